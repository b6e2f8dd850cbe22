"""Tests of lowhaio_redirect: what the servers that it leads to receive."""

import asyncio
import contextlib
import gc
import gzip
import logging
import pathlib

import pytest

import lowhaio_redirect
from lowhaio import (
    HttpConnectionError,
    HttpDataError,
    HttpError,
    HttpLoggerAdapter,
    buffered,
    streamed,
)
from lowhaio_compression import decompressed
from lowhaio_redirect import (
    HttpRedirectError,
    HttpTooManyRedirects,
    hops,
    redirectable,
    unchanged,
)
from tests.harness import (
    OK,
    Answering,
    Server,
    certified,
    connecting_to,
    context_for,
    get,
    internet,
    measured,
    on_clock,
    on_loops,
    on_one_loop,
    pool,
    python_blocks,
    response,
    run_block,
    trusting,
    turns,
    values_of,
)


def redirect(location: bytes, code: int = 302, body: bytes = b'') -> bytes:
    return response(code, body, b'location: ' + location)


@contextlib.asynccontextmanager
async def redirected(*responses, **options):
    """Yield a redirectable request to any http host, and the script that answers it."""
    script = Answering(*responses)
    async with Server(script) as server:
        async with pool(get_connection=connecting_to(http=server.port)) as request:
            yield redirectable(request, **options), script


# -------------------------------------------------------------------------- codes and methods

BODY_FIELDS = (
    (b'content-length', b'3'), (b'Content-Type', b'text/plain'), (b'CONTENT-ENCODING', b'x'),
    (b'content-language', b'en'), (b'content-location', b'/l'), (b'content-md5', b'm'),
    (b'digest', b'd'), (b'content-digest', b'd'), (b'repr-digest', b'd'), (b'trailer', b't'),
    (b'content-disposition', b'd'), (b'content-range', b'r'), (b'last-modified', b'l'),
    (b'Expect', b'nothing'))


@pytest.mark.parametrize('code', [301, 302, 303, 307, 308])
@pytest.mark.parametrize('method', [b'GET', b'HEAD', b'POST', b'PUT', b'DELETE', b'get'])
@on_one_loop
async def test_each_code_keeps_or_turns_the_method(code, method):
    is_turned = method == b'POST' and code in (301, 302) or \
        method not in (b'GET', b'HEAD') and code == 303
    async with redirected(redirect(b'/new', code), response(200)) as (request, script):
        final_code, _, body = await request(
            method, 'http://a.example/old', headers=((b'x-kept', b'1'), *BODY_FIELDS),
            body=streamed(b'abc'))
        assert final_code == b'200'
        assert await buffered(body) == b''
    next_method = b'GET' if is_turned else method
    assert script.lines == [f'{method.decode()} /old', f'{next_method.decode()} /new']
    assert script.bodies == [b'abc', b'' if is_turned else b'abc']
    first, second = script.heads
    assert second.count(b'\r\n') == (4 if is_turned else first.count(b'\r\n'))
    assert values_of(second, b'x-kept') == [b'1']


@on_loops
async def test_a_get_is_not_chunked_as_the_post_was():
    async with redirected(redirect(b'/b', 303), OK) as (request, script):
        await request(b'POST', 'http://a.example/', body=streamed(b'0\r\n\r\n'),
                      headers=((b'transfer-encoding', b'chunked'), (b'trailer', b'x')))
    assert script.lines == ['POST /', 'GET /b']
    assert script.heads[1] == b'GET /b HTTP/1.1\r\nhost: a.example\r\n\r\n'


@on_loops
async def test_the_body_function_is_called_again_with_its_arguments():
    calls = []

    def body(*args, **kwargs):
        calls.append((args, kwargs))
        return streamed(b'abc')()

    async with redirected(redirect(b'/b', 307), redirect(b'/c', 308), OK) as (request, script):
        await request(b'PUT', 'http://a.example/', headers=iter([(b'content-length', b'3')]),
                      body=body, body_args=iter([1]), body_kwargs=iter([('c', 2)]))
    assert calls == [((1,), {'c': 2})] * 3
    assert script.bodies == [b'abc'] * 3


@pytest.mark.parametrize('raw', [
    pytest.param(response(302), id='without-location'),
    pytest.param(response(302, b'', b'location: /a', b'location: /b'), id='two-locations'),
    pytest.param(response(302, b'', b'location: /a', b'location: /A'), id='locations-alike'),
    pytest.param(response(300, b'', b'location: /a'), id='multiple-choices'),
    pytest.param(response(304, b'', b'location: /a'), id='not-modified'),
    pytest.param(response(200, b'', b'location: /a'), id='ok'),
    pytest.param(response(201, b'', b'location: /a'), id='created'),
])
@on_loops
async def test_what_is_no_redirect_is_returned_as_it_is(raw):
    async with redirected(raw) as (request, script):
        code, headers, body = await request(b'GET', 'http://a.example/')
        assert code == raw[9:12]
        assert [b'%b: %b' % field for field in headers] == raw.split(b'\r\n')[1:-2]
        await body.aclose()
    assert len(script.heads) == 1


@on_loops
async def test_equal_locations_count_as_one():
    raw = response(302, b'', b'location: /b', b'x: y', b'Location:  /b')
    async with redirected(raw, OK) as (request, script):
        assert (await get(request, 'http://a.example/'))[2] == b'ok'
    assert script.lines == ['GET /', 'GET /b']


@on_loops
async def test_with_no_redirects_allowed_they_are_returned():
    async with redirected(redirect(b'/b', 307, b'to b'), max_redirects=0) as (request, script):
        code, headers, body = await get(request, 'http://a.example/')
    assert (code, headers[0], body) == (b'307', (b'location', b'/b'), b'to b')
    assert len(script.heads) == 1


# ---------------------------------------------------------------------------------- what is told


CODED = (b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n'
         b'2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n')


@on_loops
async def test_the_body_of_the_last_response_is_as_that_of_the_pool():
    async with redirected(*[redirect(b'/b'), CODED] * 2) as (request, _):
        _, _, body = await request(b'GET', 'http://a.example/')
        assert await buffered(body) == b'ok'
        assert body.trailers == ((b'x-sum', b'1'),)
        with pytest.raises(RuntimeError, match='the response body has been read'):
            await buffered(body)
        with pytest.raises(AttributeError, match="'ReceivedBody' .* 'other'"):
            _ = body.other
        await body.aclose()
        _, _, body = await request(b'GET', 'http://a.example/')
        assert await anext(body) == b'ok'
        with pytest.raises(StopAsyncIteration):
            await anext(body)


@on_loops
async def test_the_body_of_a_response_without_redirect_is_that_of_the_pool():
    async def same(method, url, **kwargs):
        return answer

    async with redirected(OK) as (request, _):
        answer = await request(b'GET', 'http://a.example/')
        assert await redirectable(same)(b'GET', 'http://a.example/') is answer
        assert hops(answer[2]) == ()
        assert await buffered(answer[2]) == b'ok'


@pytest.mark.parametrize('url, locations, expected', [
    ('http://a.example/x/y?q', [b'z', b'?r', b'//b.example:81'],
     ['http://a.example/x/z', 'http://a.example/x/z?r', 'http://b.example:81']),
    # A fragment is inherited until there is another one (RFC 9110 10.2.2).
    ('http://a.example/#f', [b'/b', b'/c#', b'/d', b'#g', b'', b'?e#h?i/j'],
     ['http://a.example/b#f', 'http://a.example/c#', 'http://a.example/d#',
      'http://a.example/d#g', 'http://a.example/d#g', 'http://a.example/d?e#h?i/j']),
    ('http://a.example/', ['/\u00e9 #\u00e9'.encode(), b'/\xe9'],
     ['http://a.example/\u00e9 #\u00e9', 'http://a.example/%E9#\u00e9']),
])
@on_loops
async def test_the_redirects_are_told(url, locations, expected):
    codes = [(b'301', b'302', b'307', b'308')[number % 4] for number in range(len(locations))]
    raws = [redirect(location, int(code)) for code, location in zip(codes, locations, strict=True)]
    async with redirected(*raws, OK) as (request, script):
        _, _, body = await request(b'GET', url)
        assert hops(body) == tuple(zip(codes, expected, strict=True))
        assert body.hops[-1].url == expected[-1]
        assert body.hops[0].code == b'301'
        assert await buffered(body) == b'ok'
    assert not any('#' in line for line in script.lines)


# ------------------------------------------------------------------ target, name and times


@pytest.mark.parametrize('target, location, sent, url', [
    # It is the location that decides.
    (b'/a/[b]', b'/c', b'/c', 'http://a.example/c#f'),
    (b'/a/[b]', b'//b.example/c', b'/c', 'http://b.example/c#f'),
    # What is relative is so to what was asked for, and not to the URL.
    (b'/a/[b]/c?d', b'e', b'/a/%5Bb%5D/e', 'http://a.example/a/[b]/e#f'),
    (b'/a/[b]?d', b'?e', b'/a/%5Bb%5D?e', 'http://a.example/a/[b]?e#f'),
    (b'/a/\xff/b', b'c#', b'/a/%FF/c', 'http://a.example/a/%FF/c#'),
    (b'/a/#b/c', b'd', b'/a/%23b/d', 'http://a.example/a/%23b/d#f'),
    (b'//b.example/a/b', b'c', b'//b.example/a/c', 'http://a.example//b.example/a/c#f'),
    (b'http://A.example:80/a/b', b'c', b'/a/c', 'http://A.example:80/a/c#f'),
    (b'*', b'c', b'/x/c', 'http://a.example/x/c#f'),
    # The same URL is asked for in the same way.
    (b'/a/[b]', b'', b'/a/[b]', 'http://a.example/a/[b]#f'),
    (b'/a/[b]', b'#g', b'/a/[b]', 'http://a.example/a/[b]#g'),
    (b'*', b'', b'*', 'http://a.example/x/y?z#f'),
])
@on_loops
async def test_a_target_is_for_one_url(target, location, sent, url):
    async with redirected(redirect(location, 307), OK) as (request, script):
        _, _, body = await request(b'OPTIONS', 'http://a.example/x/y?z#f', target=target)
        await buffered(body)
    assert [head.split(b' ')[1] for head in script.heads] == [target, sent]
    assert [hop.url for hop in hops(body)] == [url]


@pytest.mark.parametrize('target', [
    b'http://b.example/', b'http://a.example:81/', b'https://a.example/', b'a.example:80'])
@on_loops
async def test_what_a_proxy_passes_on_is_not_followed(target):
    """The next request would go around the proxy, or the proxy would not know where to."""
    async with redirected(redirect(b'/b', 307, b'to b'), OK) as (request, script):
        code, headers, body = await get(request, 'http://a.example/', target=target)
    assert (code, headers[0], body) == (b'307', (b'location', b'/b'), b'to b')
    assert len(script.heads) == 1


@pytest.mark.parametrize('locations, expected', [
    ([b'/b', b'//127.0.0.1:PORT/c'], ['a.example'] * 3),
    ([b'//b.example/', b'/c'], ['a.example', 'b.example', 'b.example']),
    # What another origin did not get stays out.
    ([b'//b.example/', b'//127.0.0.1:PORT/'], ['a.example', 'b.example', None]),
])
@on_loops
async def test_the_name_of_a_server_is_for_its_origin_alone(locations, expected):
    names = []
    context = certified('a.example', 'b.example', '127.0.0.1')
    context.sni_callback = lambda sock, name, context: names.append(name)
    script = Answering(OK)
    async with Server(script, context) as server:
        script.responses[:0] = [redirect(location.replace(b'PORT', b'%d' % server.port))
                                for location in locations]
        async with pool(get_connection=connecting_to(https=server.port),
                        get_ssl_context=trusting, keep_alive_timeout=0) as request:
            code, _, _ = await get(redirectable(request), server.url,
                                   server_hostname='a.example')
    assert (code, names) == (b'200', expected)


@on_clock
async def test_each_request_of_a_chain_has_the_times():
    async def script(peer):
        await peer.read_head()
        await asyncio.sleep(0.8)
        await peer.send(redirect(b'/b'))
        await peer.read_head()
        await peer.closed()

    times = {'read': 1}
    async with Server(script) as server, pool() as request:
        seconds, task = await measured(
            redirectable(request)(b'GET', server.url, timeouts=times))
        error = task.exception()
    assert seconds == 1.8
    assert (type(error), type(error.__cause__)) == (HttpDataError, TimeoutError)
    assert (error.phase, error.response_started) == ('head', True)
    assert times == {'read': 1}


@on_loops
async def test_the_phase_of_a_failure_is_that_of_the_request_that_failed():
    async with redirected(redirect(b'//b.example:99999/')) as (request, _):
        with pytest.raises(HttpRedirectError) as error:
            await request(b'GET', 'http://a.example/')
    assert error.value.phase == 'refused'


@on_loops
async def test_the_repr_of_a_body_counts_its_redirects_and_shows_no_url():
    async with redirected(redirect(b'/?token=hidden'), OK) as (request, _):
        _, _, body = await request(b'GET', 'http://a.example/?token=hidden')
        shown = repr(body)
        await buffered(body)
    assert shown.startswith('<RedirectedBody hops=1 of <')
    assert 'hidden' not in shown


@on_loops
async def test_the_redirects_are_told_through_other_bodies():
    content = gzip.compress(b'ok')
    raw = response(200, content, b'content-encoding: gzip')
    async with redirected(redirect(b'/b'), raw) as (request, _):
        _, _, body = await decompressed(request)(b'GET', 'http://a.example/')
        assert hops(body) == ((b'302', 'http://a.example/b'),)
        assert await buffered(body) == b'ok'


@on_loops
async def test_a_body_of_another_layer_keeps_what_it_has():
    async def request(method, url, **kwargs):
        return b'302' if url.endswith('/') else b'200', ((b'location', b'/b'),), inner

    inner = Body([])
    inner.send = object()
    _, _, body = await redirectable(request)(b'GET', 'http://a.example/')
    assert body.send is inner.send
    inner.sizes = [1, 2]
    assert await buffered(body) == bytes(3)
    inner.is_closed = False
    await body.aclose()
    assert inner.is_closed


@pytest.mark.parametrize('responses, kwargs, expected', [
    ([redirect(b'/b?secret'), redirect(b'/c#f', 301)], {'max_redirects': 1},
     ((b'302', 'http://a.example/b?secret'), (b'301', 'http://a.example/c#f'))),
    ([redirect(b'ftp://b.example/')], {}, ((b'302', 'ftp://b.example/'),)),
    ([redirect(b'//u:p@b.example/')], {}, ((b'302', 'http://u:p@b.example/'),)),
    ([redirect(b'//b.example:0/')], {}, ((b'302', 'http://b.example:0/'),)),
    ([redirect(b'/b'), redirect(b'/c'), None], {},
     ((b'302', 'http://a.example/b'), (b'302', 'http://a.example/c'))),
    ([None], {}, ()),
])
@on_loops
async def test_the_redirects_before_an_error_are_told(responses, kwargs, expected):
    async with redirected(*responses, **kwargs) as (request, _):
        with pytest.raises(HttpDataError) as error:
            await request(b'GET', 'http://a.example/')
    assert hops(error.value) == expected
    assert 'secret' not in str(error.value)
    if isinstance(error.value, HttpRedirectError):
        assert error.value.hops == expected
        assert error.value.phase == ('refused' if expected[-1][1].endswith(':0/') else 'head')


STRIPPED = ('authorization', 'x-token')
TO_B = [redirect(b'/a?secret'), redirect(b'//b.example/b?secret'), redirect(b'/c'), OK]


async def get_secretly(request, **kwargs):
    assert (await get(request, 'http://a.example/x?secret', headers=(
        (b'Authorization', b'secret'), (b'accept', b'secret'), (b'X-Token', b'secret'),
        (b'x-token', b'secret')), **kwargs))[2] == b'ok'


@on_loops
async def test_fields_that_are_left_out_are_logged(caplog):
    caplog.set_level('INFO', 'lowhaio')
    async with redirected(*TO_B) as (request, script):
        await get_secretly(request)
    assert [(record.levelname, record.message) for record in caplog.records
            if record.name == 'lowhaio.redirect'] == [
        ('INFO', "[http:GET,http://a.example/a] Redirected to 'http://b.example:80', without the "
         'fields authorization, x-token')]
    assert 'secret' not in caplog.text


@on_loops
async def test_they_are_logged_by_the_adapter_of_the_request(caplog):
    def get_logger_adapter(extra):
        extras.append(extra)
        return HttpLoggerAdapter(logging.getLogger('mine'), {'job': 'nightly', **extra})

    extras = []
    caplog.set_level('INFO')
    async with redirected(*TO_B) as (request, script):
        await get_secretly(request, get_logger_adapter=get_logger_adapter)
    [message] = [record.message for record in caplog.records
                 if record.name == 'mine' and 'Redirected' in record.message]
    assert message.startswith('[http:nightly,GET,http://a.example/a] Redirected to ')
    assert {'lowhaio_method': 'GET', 'lowhaio_url': 'http://a.example/a?secret'} in extras
    assert not any(record.name.startswith('lowhaio') for record in caplog.records)


@pytest.mark.parametrize('responses', [
    pytest.param([redirect(b'/b'), OK], id='same-origin'),
    pytest.param([redirect(b'//b.example/'), OK], id='nothing-to-leave-out'),
])
@on_loops
async def test_nothing_is_logged_where_nothing_is_left_out(responses, caplog):
    caplog.set_level('DEBUG')
    async with redirected(*responses) as (request, _):
        await get(request, 'http://a.example/', headers=((b'accept', b'a'),))
    assert not [record for record in caplog.records if record.name == 'lowhaio.redirect']


# ------------------------------------------------------------------------------- the location

# The examples of RFC 3986 5.4.1 and 5.4.2, without those of other schemes.
RFC_EXAMPLES = [
    ('g', '/b/c/g'), ('./g', '/b/c/g'), ('g/', '/b/c/g/'), ('/g', '/g'), ('?y', '/b/c/d;p?y'),
    ('g?y', '/b/c/g?y'), ('#s', '/b/c/d;p?q'), ('g#s', '/b/c/g'), ('g?y#s', '/b/c/g?y'),
    (';x', '/b/c/;x'), ('g;x', '/b/c/g;x'), ('g;x?y#s', '/b/c/g;x?y'), ('', '/b/c/d;p?q'),
    ('.', '/b/c/'), ('./', '/b/c/'), ('..', '/b/'), ('../', '/b/'), ('../g', '/b/g'),
    ('../..', '/'), ('../../', '/'), ('../../g', '/g'), ('../../../g', '/g'),
    ('../../../../g', '/g'), ('/./g', '/g'), ('/../g', '/g'), ('g.', '/b/c/g.'),
    ('.g', '/b/c/.g'), ('g..', '/b/c/g..'), ('..g', '/b/c/..g'), ('./../g', '/b/g'),
    ('./g/.', '/b/c/g/'), ('g/./h', '/b/c/g/h'), ('g/../h', '/b/c/h'),
    ('g;x=1/./y', '/b/c/g;x=1/y'), ('g;x=1/../y', '/b/c/y'), ('g?y/./x', '/b/c/g?y/./x'),
    ('g?y/../x', '/b/c/g?y/../x'), ('g#s/./x', '/b/c/g'), ('g#s/../x', '/b/c/g'),
]


@pytest.mark.parametrize('base, location, host, target', [
    *(('http://a/b/c/d;p?q', location, 'a', target) for location, target in RFC_EXAMPLES),
    # An authority.
    ('http://a/b?q', '//g', 'g', '/'),
    ('http://a/b?q', '//g?y', 'g', '/?y'),
    ('http://a/b', '//B.example:8080/c?d', 'b.example:8080', '/c?d'),
    ('http://a/b', 'http://b', 'b', '/'),
    ('http://a/b', 'HTTP://B/c/../d', 'b', '/d'),
    ('http://a/b', 'http://[::1]:81/c', '[::1]:81', '/c'),
    ('http://a', 'b', 'a', '/b'),
    ('http://a?q', '?r', 'a', '/?r'),
    ('http://a/b/../c?q', '?r', 'a', '/b/../c?r'),
    # urllib.parse would drop these.
    ('http://a/b?q', '?', 'a', '/b?'),
    ('http://a/b', '/c?', 'a', '/c?'),
    ('http://a/b', '//g/c?#f', 'g', '/c?'),
    ('http://a/b', '/c;', 'a', '/c;'),
    # Empty segments are segments.
    ('http://a/b', '/c//../d', 'a', '/c/d'),
    ('http://a/b', '/c//', 'a', '/c//'),
    ('http://a/b/c', '..//d', 'a', '//d'),
    # These have spaces, bytes that are not ASCII, and other characters that no target may have.
    ('http://a/b', '/c d?e f', 'a', '/c%20d?e%20f'),
    ('http://a/b', '/\u00e9?\u00e9', 'a', '/%C3%A9?%C3%A9'),
    ('http://a/b', 'http://b\u00fccher.example/', 'xn--bcher-kva.example', '/'),
    ('http://a/b', b'/\xe9?\xfc', 'a', '/%E9?%FC'),
    ('http://a/b', r'/\evil.example', 'a', '/%5Cevil.example'),
    ('http://a/b', '/%2e%2e/%2F%zz', 'a', '/%2e%2e/%2F%25zz'),
    ('http://a/b', '/c?http://b:1/d', 'a', '/c?http://b:1/d'),
    ('http://a/b', './c:d', 'a', '/c:d'),
])
@on_one_loop
async def test_the_location_is_resolved_by_rfc_3986(base, location, host, target):
    raw = location if isinstance(location, bytes) else location.encode()
    async with redirected(redirect(raw), OK) as (request, script):
        assert (await get(request, base))[2] == b'ok'
    assert script.lines[1] == f'GET {target}'
    assert values_of(script.heads[1], b'host') == [host.encode()]


@on_loops
async def test_each_location_is_resolved_against_the_last():
    async with redirected(
            redirect(b'//b.example/c/d'), redirect(b'e'), redirect(b'?f'), OK,
    ) as (request, script):
        await get(request, 'http://a.example/x/y')
    assert script.lines == ['GET /x/y', 'GET /c/d', 'GET /c/e', 'GET /c/e?f']
    assert [values_of(head, b'host') for head in script.heads] == [
        [b'a.example'], [b'b.example'], [b'b.example'], [b'b.example']]


@pytest.mark.parametrize('location, target', [
    (b'/b', '/b'), (b'?r', '/a?r'), (b'/b?r', '/b?r'),
    # These lead to the very same URL, which the params are part of.
    (b'', '/a?q&p=1'), (b'#f', '/a?q&p=1'),
])
@on_loops
async def test_params_are_those_of_the_first_url(location, target):
    async with redirected(redirect(location), OK) as (request, script):
        await get(request, 'http://a.example/a?q', params=(('p', '1'),))
    assert script.lines == ['GET /a?q&p=1', f'GET {target}']


# -------------------------------------------------------------------------------- other origins

SECRET = ((b'Authorization', b'1'), (b'cookie', b'2'), (b'Cookie', b'3'), (b'x-token', b'4'),
          (b'proxy-authorization', b'5'), (b'referer', b'6'), (b'origin', b'7'),
          (b'sec-websocket-protocol', b'8'))
HARMLESS = (
    (b'Accept', b'a'), (b'accept', b'b'), (b'RANGE', b'bytes=0-'), (b'User-Agent', b'c'),
    (b'accept-charset', b'd'), (b'accept-encoding', b'e'), (b'accept-language', b'f'),
    (b'cache-control', b'g'), (b'connection', b'TE'), (b'if-match', b'h'),
    (b'if-modified-since', b'i'), (b'if-none-match', b'j'), (b'if-range', b'k'),
    (b'if-unmodified-since', b'l'), (b'pragma', b'm'), (b'te', b'trailers'),
    (b'upgrade', b'n'), (b'sec-websocket-key', b'o'), (b'sec-websocket-version', b'p'),
    (b'sec-websocket-extensions', b'q'))


def names(head: bytes) -> set[bytes]:
    return {line.partition(b':')[0].lower() for line in head.split(b'\r\n')[1:-2]}


@pytest.mark.parametrize('location, is_same', [
    (b'/b', True), (b'//a.example/b', True), (b'//A.EXAMPLE:80/b', True),
    (b'http://a.example.:/b', True), (b'HTTP://a.example:080/b', True),
    (b'//b.example/b', False), (b'//a.example:81/b', False), (b'//sub.a.example/b', False),
    (b'//a.example:800/b', False), (b'//example/b', False), (b'https://a.example/b', False),
    (b'https://a.example:80/b', False),
])
@on_loops
async def test_another_origin_gets_harmless_fields_only(location, is_same):
    script = Answering(redirect(location), OK)
    context = context_for('a.example')
    async with Server(script) as http, Server(script, context) as https, pool(
            get_connection=connecting_to(http=http.port, https=https.port),
            get_ssl_context=trusting) as request:
        await get(redirectable(request), 'http://a.example/', headers=(
            (b'Host', b'a.example'), *SECRET, *HARMLESS))
    first, second = script.heads
    harmless = {name.lower() for name, _ in HARMLESS} | {b'host'}
    assert names(second) == (names(first) if is_same else harmless)
    assert values_of(second, b'accept') == [b'a', b'b']
    assert values_of(second, b'cookie') == ([b'2', b'3'] if is_same else [])


# Lower case makes one name of some that have different owners, and two of some that are the same.
@pytest.mark.parametrize('base, location, is_same', [
    ('http://\u0391\u03a3.example', '//\u03b1\u03c2.example', False),
    ('http://fa\xdf.example', '//fass.example', False),
    ('http://fa\xdf.example', '//xn--fa-hia.example', True),
    ('http://B\xdcCHER.example', '//xn--bcher-kva.example', True),
])
@on_loops
async def test_names_are_the_same_origin_if_they_are_the_same_host(base, location, is_same):
    async with redirected(redirect(location.encode()), OK) as (request, script):
        await get(request, base, headers=SECRET)
    assert values_of(script.heads[1], b'cookie') == ([b'2', b'3'] if is_same else [])


@on_loops
async def test_what_was_stripped_stays_stripped_when_the_chain_comes_back():
    async with redirected(redirect(b'//b.example/'), redirect(b'//a.example/'), OK) as (
            request, script):
        await get(request, 'http://a.example/', headers=(*SECRET, *HARMLESS))
    assert names(script.heads[0]) > names(script.heads[1]) == names(script.heads[2])


@on_loops
async def test_other_origins_get_the_fields_that_are_to_be_kept():
    async with redirected(redirect(b'//b.example/'), redirect(b'//c.example/'), OK,
                          keep=iter([b'X-Token', b'authorization', b'unused'])) as (
            request, script):
        await get(request, 'http://a.example/', headers=(*SECRET, *HARMLESS))
    kept = {name.lower() for name, _ in HARMLESS} | {b'host', b'x-token', b'authorization'}
    assert names(script.heads[1]) == names(script.heads[2]) == kept
    assert values_of(script.heads[2], b'x-token') == [b'4']


@on_loops
async def test_another_origin_gets_the_body_and_its_fields():
    async with redirected(redirect(b'//b.example/', 307), OK) as (request, script):
        await request(b'PUT', 'http://a.example/', headers=(*BODY_FIELDS, *SECRET),
                      body=streamed(b'abc'))
    assert script.bodies == [b'abc', b'abc']
    assert names(script.heads[1]) == {name.lower() for name, _ in BODY_FIELDS} | {b'host'}


@on_loops
async def test_transform_headers_gets_both_origins():
    calls = []

    def transform_headers(headers, request_origin, redirect_origin):
        calls.append((headers, request_origin, redirect_origin))
        return iter([*headers, (b'x', b'%d' % len(calls))])

    async with redirected(
            redirect(b'/b'), redirect(b'//[::1]:81'), redirect(b'//B.example.:0080'), OK,
            transform_headers=transform_headers) as (request, script):
        await get(request, 'http://a.example/', headers=((b'a', b'0'),))
    assert calls == [
        (((b'a', b'0'),), 'http://a.example:80', 'http://a.example:80'),
        (((b'a', b'0'), (b'x', b'1')), 'http://a.example:80', 'http://[::1]:81'),
        (((b'a', b'0'), (b'x', b'1'), (b'x', b'2')), 'http://[::1]:81', 'http://b.example:80'),
    ]
    assert values_of(script.heads[3], b'x') == [b'1', b'2', b'3']


# --------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize('location, shown', [
    (b'ftp://b.example/', "'ftp://b.example:'"), (b'javascript:alert(1)', "'javascript://:'"),
    (b'file:///etc/passwd', "'file://:'"), (b'x:' + b'y' * 9, "'x://:'"),
    (b'ftp://user:hunter2@b.example/', "'ftp://b.example:'"),
    (b'ftp://' + b'b' * 200, "'ftp://" + 'b' * 94 + "'"),
])
@on_loops
async def test_other_schemes_are_refused(location, shown):
    async with redirected(redirect(location)) as (request, script):
        with pytest.raises(HttpRedirectError) as error:
            await request(b'GET', 'http://a.example/secret?secret', params={'secret': 1})
    assert str(error.value) == \
        f'GET http://a.example:80: the redirect to {shown} is refused, for its scheme'
    assert len(script.heads) == 1


ALL_SCHEMES = (('http', 'http'), ('http', 'https'), ('https', 'https'), ('https', 'http'))


@on_loops
async def test_https_to_http_is_refused_unless_asked_for():
    script = Answering(redirect(b'http://a.example/'), OK)
    context = context_for('a.example')
    async with Server(script) as http, Server(script, context) as https, pool(
            get_connection=connecting_to(http=http.port, https=https.port),
            get_ssl_context=trusting) as request:
        with pytest.raises(HttpRedirectError, match=r'^POST https://a\.example:443: the redirect '
                           r"to 'http://a\.example:80' is refused, for its scheme$"):
            await redirectable(request)(b'POST', 'https://a.example/')
        script.responses = [redirect(b'http://a.example/'), OK]
        assert (await get(redirectable(request, schemes=ALL_SCHEMES), 'https://a.example/',
                          headers=SECRET))[2] == b'ok'
    assert names(script.heads[2]) == {b'host'}


@pytest.mark.parametrize('max_redirects', [1, 2, 20])
@on_loops
async def test_more_than_max_redirects_are_an_error(max_redirects):
    async with redirected(redirect(b'/loop'), max_redirects=max_redirects) as (request, script):
        with pytest.raises(HttpTooManyRedirects) as error:
            await request(b'GET', 'http://a.example/')
        assert len(script.heads) == max_redirects + 1
        assert set(script.connections) == {0}
        assert str(error.value) == "GET http://a.example:80: the redirect to " \
            f"'http://a.example:80' passes max_redirects, {max_redirects}"
        assert isinstance(error.value, HttpDataError)
        assert error.value.response_started
        script.responses = [*[redirect(b'/end')] * max_redirects, OK]
        assert (await get(request, 'http://a.example/'))[2] == b'ok'


@on_loops
async def test_twenty_redirects_are_followed_by_default():
    async with redirected(*[redirect(b'/next')] * 20, OK) as (request, script):
        assert (await get(request, 'http://a.example/'))[2] == b'ok'
        script.responses = [redirect(b'/next')]
        with pytest.raises(HttpTooManyRedirects) as error:
            await request(b'GET', 'http://a.example/')
    assert len(script.heads) == 21 + 21
    # The same request would fail in the same way.
    assert error.value.is_lasting


@pytest.mark.parametrize('location', [
    b'http://', b'http:g', b'http:///g', b'//b.example:x/',
    b'//b.example:0/', b'//b.example:99999/', b'//b.example:' + b'9' * 5000, b'//[::1/',
    b'/a\tb', b'//b c/', b'//a.example:80:80/',
])
@on_loops
async def test_a_location_that_can_not_be_requested_is_an_error_of_the_redirect(location):
    async with redirected(redirect(location)) as (request, script):
        with pytest.raises(HttpRedirectError, match='^after 1 redirects: GET.*refused: url') as \
                error:
            await request(b'GET', 'http://a.example/')
    assert isinstance(error.value.__cause__, HttpConnectionError)
    assert error.value.response_started
    assert not error.value.reused
    assert len(script.heads) == 1


@pytest.mark.parametrize('location', [
    b'//user:hunter2@b.example/', b'http://hunter2@b.example', b'http://:@b.example?a',
    b'//hunter2@b@b.example#a', b'http://@b.example/',
])
@on_loops
async def test_a_location_with_userinfo_is_refused(location):
    async with redirected(redirect(location)) as (request, script):
        with pytest.raises(HttpRedirectError) as error:
            await request(b'GET', 'http://a.example/')
    assert str(error.value) == (
        "GET http://a.example:80: the redirect to 'http://b.example:80' is refused, for the "
        'userinfo (user:password@) before its host')
    assert error.value.response_started
    assert len(script.heads) == 1


@pytest.mark.parametrize('location', [b'/@', b'//b.example/@', b'?http://u@c/', b'#//u@c/'])
@on_loops
async def test_an_at_sign_elsewhere_is_no_userinfo(location):
    async with redirected(redirect(location), OK) as (request, _):
        assert (await get(request, 'http://a.example/'))[2] == b'ok'


def raising(*_):
    raise KeyError('secret')


class RaisingAdapter(logging.LoggerAdapter):
    def info(self, message, *args):
        if message.startswith('Redirected'):
            raising()


@pytest.mark.parametrize('options, kwargs', [
    ({'redirects': ((b'302', raising),)}, {}),
    ({'redirects': ((b'302', lambda method: raising),)}, {}),
    ({'redirects': ((b'302', lambda method: lambda *args: ()),)}, {}),
    ({'transform_headers': raising}, {}),
    ({}, {'get_logger_adapter': lambda extra: RaisingAdapter(logging.getLogger(), extra)}),
])
@on_loops
async def test_a_function_of_the_caller_that_raises_is_an_error_of_the_redirect(options, kwargs):
    async with redirected(redirect(b'//b.example/'), OK, **options) as (request, script):
        with pytest.raises(HttpRedirectError) as error:
            await request(b'GET', 'http://a.example/', headers=((b'a', b'b'),), **kwargs)
    cause = error.value.__cause__
    assert isinstance(cause, (KeyError, ValueError))
    assert str(error.value) == (
        "GET http://a.example:80: the redirect to 'http://b.example:80' could not be made a "
        f'request: {type(cause).__name__}')
    assert len(script.heads) == 1


@on_loops
async def test_an_error_before_any_redirect_comes_as_it_is():
    async with redirected(None) as (request, _):
        with pytest.raises(HttpConnectionError, match='refused: url must be a str, got bytes'):
            await request(b'GET', b'/')
        with pytest.raises(HttpConnectionError, match='refused: headers must be pairs'):
            await request(b'GET', 'http://a.example/', headers=5)
        with pytest.raises(HttpDataError) as error:
            await request(b'GET', 'http://a.example/')
    assert not isinstance(error.value, HttpRedirectError)
    assert not error.value.response_started


@on_loops
async def test_an_error_after_a_redirect_tells_that_there_was_a_response():
    async with redirected(redirect(b'/b'), None) as (request, _):
        with pytest.raises(HttpDataError) as error:
            await request(b'POST', 'http://a.example/')
    assert error.value.reused
    assert error.value.response_started


@on_loops
async def test_what_can_not_be_sent_after_a_redirect_is_no_connection_error():
    async def request(method, url, **kwargs):
        if url.endswith('/b'):
            raise failure
        return b'302', ((b'location', b'/b'),), Body([])

    failure = HttpConnectionError('no connection')
    failure.reused = True
    with pytest.raises(HttpRedirectError, match='^after 1 redirects: no connection$') as error:
        await redirectable(request)(b'GET', 'http://a.example/')
    assert error.value.__cause__ is failure
    assert not isinstance(error.value, HttpConnectionError)
    assert error.value.reused
    assert error.value.response_started
    assert hops(error.value) == ((b'302', 'http://a.example/b'),)
    # There may be a connection the next time.
    assert not error.value.is_lasting


@on_loops
async def test_a_body_that_can_be_made_once_is_not_sent_empty_after_a_redirect():
    chunks = streamed(b'abc')()
    async with redirected(redirect(b'/b', 307), OK) as (request, script):
        with pytest.raises(HttpRedirectError, match='body must return a new async iterator'):
            await request(b'PUT', 'http://a.example/', body=lambda: chunks,
                          headers=((b'content-length', b'3'),))
    assert script.bodies == [b'abc']


# --------------------------------------------------------------- the redirect's own body


def chunks(*sizes):
    return b''.join(b'%x\r\n%b\r\n' % (size, bytes(size)) for size in sizes)


CHUNKED = b'HTTP/1.1 302 Found\r\nlocation: /b\r\ntransfer-encoding: chunked\r\n\r\n'


@pytest.mark.parametrize('raw, is_drained', [
    pytest.param(redirect(b'/b'), True, id='empty'),
    pytest.param(redirect(b'/b', body=bytes(32 * 1024)), True, id='short'),
    pytest.param(redirect(b'/b', body=bytes(2 ** 20)), False, id='long'),
    pytest.param(CHUNKED + chunks(1, 1000) + b'0\r\n\r\n', True, id='chunked'),
    pytest.param(CHUNKED + chunks(2 ** 20), False, id='without-end'),
])
@on_loops
async def test_the_body_of_a_redirect_is_drained_up_to_a_bound(raw, is_drained):
    async with redirected(raw, OK) as (request, script):
        assert (await get(request, 'http://a.example/'))[2] == b'ok'
    assert script.connections == ([0, 0] if is_drained else [0, 1])


class Body:
    """The body of a response, whose chunks have these sizes."""

    def __init__(self, sizes):
        self.sizes = list(sizes)
        self.is_closed = False

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.sizes:
            raise StopAsyncIteration
        return bytes(self.sizes.pop(0))

    async def aclose(self):
        self.is_closed = True


@pytest.mark.parametrize('sizes, unread', [
    ((63 * 1024,), 0), ((63 * 1024, 0, 0), 1), ((63 * 1024 + 1, 0, 0), 2), ((1,) * 100, 36),
])
@on_loops
async def test_each_read_counts_as_a_kibibyte_more(sizes, unread):
    async def request(method, url, **kwargs):
        return b'302' if url.endswith('/') else b'200', ((b'location', b'/b'),), body

    body = Body(sizes)
    await redirectable(request)(b'GET', 'http://a.example/')
    assert len(body.sizes) == unread
    assert body.is_closed


@on_loops
async def test_a_redirect_with_a_bad_body_is_followed():
    async def script(peer):
        head = await peer.read_head()
        await peer.send(*((OK,) if b'/b ' in head else (CHUNKED, b'rubbish\r\n')))

    async with Server(script) as server, pool() as request:
        assert (await get(redirectable(request), server.url))[2] == b'ok'


@on_loops
async def test_a_redirect_that_trickles_is_not_read_for_long():
    async def script(peer):
        head = await peer.read_head()
        if b'/b ' in head:
            await peer.send(OK)
            return
        await peer.send(CHUNKED)
        for sent in range(1000):
            if peer.reader.at_eof():
                ended.set_result(sent)
                return
            await peer.send(chunks(1))

    ended = asyncio.get_running_loop().create_future()
    async with Server(script) as server, pool() as request:
        assert (await get(redirectable(request), server.url))[2] == b'ok'
        assert await ended <= lowhaio_redirect.MAX_DRAINED / 1024 + 2


@on_loops
async def test_the_body_of_a_redirect_that_does_not_come_is_not_waited_for(monkeypatch):
    async def script(peer):
        head = await peer.read_head()
        if b'/b ' in head:
            await peer.send(OK)
        else:
            await peer.send(CHUNKED + chunks(1))
            await peer.closed()
            closed.set()

    monkeypatch.setattr(lowhaio_redirect, 'DRAIN_TIMEOUT', 0.01)
    closed = asyncio.Event()
    # With that of the pool alone, the test would not end.
    async with Server(script) as server, pool(socket_timeout=1000, max_connections=1) as request:
        assert (await get(redirectable(request), server.url))[2] == b'ok'
        await closed.wait()
    assert asyncio.current_task().cancelling() == 0


@on_loops
async def test_cancelled_while_it_drains_it_closes_the_connection():
    async def script(peer):
        await peer.read_head()
        await peer.send(CHUNKED)
        reading.set()
        await peer.closed()
        closed.set()

    reading, closed = asyncio.Event(), asyncio.Event()
    async with Server(script) as server, pool() as request:
        task = asyncio.create_task(redirectable(request)(b'GET', server.url))
        await reading.wait()
        await turns(5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await closed.wait()


@on_loops
async def test_a_dropped_body_closes_its_connection():
    async def script(peer):
        head = await peer.read_head()
        if b'/b ' not in head:
            await peer.send(redirect(b'/b'))
            head = await peer.read_head()
        await peer.send(OK[:-1])
        await peer.closed()
        closed.set()

    closed = asyncio.Event()
    async with Server(script) as server, pool() as request:
        response = await redirectable(request)(b'GET', server.url)
        del response
        gc.collect()
        await closed.wait()


# ------------------------------------------------------------------------------ its own options


@on_loops
async def test_redirects_as_the_caller_has_them():
    def put(method, body, body_args, body_kwargs, headers):
        return b'PUT', streamed(b'new'), (), {}, ((b'content-length', b'3'),)

    redirects = ((b'418', lambda method: put if method == b'BREW' else unchanged),)
    async with redirected(redirect(b'/b', 418), redirect(b'/c', 418), redirect(b'/d'),
                          redirects=redirects) as (request, script):
        code, _, _ = await request(b'BREW', 'http://a.example/')
    assert code == b'302'
    assert script.lines == ['BREW /', 'PUT /b', 'PUT /c']
    assert script.bodies == [b'', b'new', b'new']


@on_loops
async def test_other_keywords_are_passed_on():
    calls = []

    async def request(method, url, **kwargs):
        calls.append(kwargs)
        return b'302' if len(calls) == 1 else b'200', ((b'location', b'/b'),), body

    body = Body([])
    await redirectable(request)(b'GET', 'http://a.example/', x=1)
    assert [kwargs['x'] for kwargs in calls] == [1, 1]


@pytest.mark.parametrize('args, kwargs', [
    ((None,), {}),
    ((get, ((b'301',),)), {}),
    ((get, ((301, lambda method: unchanged),)), {}),
    ((get, ((b'3xx', lambda method: unchanged),)), {}),
    ((get, ((b'301', unchanged), (b'302', None))), {}),
    ((get,), {'max_redirects': -1}),
    ((get,), {'max_redirects': None}),
    ((get,), {'transform_headers': None}),
    ((get,), {'schemes': None}),
    ((get,), {'schemes': ('https', 'http')}),
    ((get,), {'keep': None}),
    ((get,), {'keep': b'upload-offset'}),
    ((get,), {'keep': ('upload-offset',)}),
    ((get,), {'keep': (b'upload-offset',), 'transform_headers': lambda headers, *_: headers}),
])
def test_a_bad_argument_fails_at_once(args, kwargs):
    with pytest.raises((TypeError, ValueError)):
        redirectable(*args, **kwargs)


@pytest.mark.parametrize('kind, bases', [
    (HttpRedirectError, (HttpDataError,)), (HttpTooManyRedirects, (HttpRedirectError,))])
def test_the_errors_are_errors_of_lowhaio(kind, bases):
    assert kind.__bases__ == bases
    assert issubclass(kind, HttpError)


# -------------------------------------------------------------------------------- the README

BLOCKS = python_blocks(pathlib.Path(__file__).with_name('README.md'))


@pytest.mark.parametrize('block, shown', [
    (BLOCKS[0], "b'200' b'Hello'\n"),
    (BLOCKS[1], "b'302' https://www.example.com/new\nhttps://www.example.com/new b'Hello'\n"),
    (BLOCKS[2], "b'200' b'Hello'\n"),
], ids=['redirectable', 'hops', 'redirects'])
def test_a_block_of_the_readme_runs_as_it_stands(block, shown, capsys):
    script = Answering(redirect(b'/new'), response(200, b'Hello'))
    with internet(script):
        run_block(block)
    assert capsys.readouterr().out == shown
    assert len(BLOCKS) == 3
    assert script.lines == ['GET /old', 'GET /new']
