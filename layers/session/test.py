"""Tests of lowhaio_session: what servers receive, and what callers get."""

import asyncio
import contextlib
import gc
import io
import json
import pathlib
import random
import re
import weakref
from functools import partial
from http.cookiejar import CookieJar

import pytest
from werkzeug.formparser import parse_form_data

from lowhaio import (
    HttpConnectionClosedError,
    HttpConnectionError,
    HttpDataError,
    HttpError,
    Phase,
    Pool,
    buffered,
    streamed,
)
from lowhaio_auth import digest
from lowhaio_redirect import redirectable
from lowhaio_retry import retry
from lowhaio_session import ResponseHeaders, Session, StatusError, compose
from tests.harness import (
    OK,
    Answering,
    Server,
    cancelling,
    ends_after,
    failure,
    forever,
    head,
    holding,
    internet,
    on_clock,
    on_loops,
    on_one_loop,
    python_blocks,
    response,
    run_block,
    small_sending_sock,
    turns,
    until,
    value,
    values_of,
    yielding,
)

README = pathlib.Path(__file__).with_name('README.md')
CUT_OFF = head(b'content-length: 100') + b'ok'


@contextlib.asynccontextmanager
async def session(*responses, path='', **options):
    """A session whose base URL is a server, the script that answers, and the server."""
    script = Answering(*responses or (OK,))
    async with Server(script) as server, Session(server.origin + path, **options) as http:
        yield http, script, server


async def received(**options):
    """Head and body of a POST with these options, as the server has them."""
    async with session() as (http, script, _):
        await http.post('/', **options)
    return script.heads[0], script.bodies[0]


# -------------------------------------------------------------------------------- the verbs


@pytest.mark.parametrize('verb', ['get', 'head', 'options', 'post', 'put', 'patch', 'delete'])
@on_one_loop
async def test_each_verb(verb):
    async with session(OK if verb != 'head' else head(b'content-length: 2')) as (http, script, _):
        answer = await getattr(http, verb)('/items', params={'page': 2, 'tag': ['a', 'b']})
        assert answer.status == 200
        assert await answer.bytes() == (b'' if verb == 'head' else b'ok')
    assert script.lines == [f'{verb.upper()} /items?page=2&tag=a&tag=b']
    # Servers may refuse what is meant to have content and does not tell of any.
    assert value(script.heads[0], b'content-length') == (
        b'0' if verb in ('post', 'put', 'patch') else None)


@on_one_loop
async def test_any_method_in_any_case():
    async with session() as (http, script, _):
        await http.request('purge', '/')
        await http.request('get', '/')
        with pytest.raises(HttpConnectionError, match='method must be a token'):
            await http.request('GET /', '/')
        with pytest.raises(TypeError, match='methods and headers must be str or bytes, got int'):
            http.request('GET', '/', headers={'a': 1})
    assert script.lines == ['PURGE /', 'GET /']


@on_one_loop
async def test_a_header_that_can_not_be_sent_is_in_no_error():
    """Not in its repr or its attributes either, as with a UnicodeEncodeError."""
    async with session() as (http, script, _):
        with pytest.raises(ValueError, match='must have no character above U') as got:
            http.get('/', headers={'x-token': 'a secret €'})
        assert got.value.__context__ is None
        assert 'secret' not in f'{got.value!r}{vars(got.value)}'
        assert type(got.value) is ValueError
        await http.get('/', headers={'x': 'é'})
    assert value(script.heads[0], b'x') == b'\xe9'


@on_loops
async def test_a_response():
    answer = response(201, '{"title": "Zoë"}'.encode(), b'X-One: a', b'X-one: b',
                      b'Content-Type: application/json')
    async with session(answer) as (http, _, server):
        got = await http.get('/items?a=b#top', params=[('c', 'd')])
        assert (got.status, got.code) == (201, b'201')
        assert got.url == server.origin + '/items?a=b&c=d#top'
        assert got.history == ()
        assert await got.json() == {'title': 'Zoë'}
        assert await got.text() == '{"title": "Zoë"}'
        # The content is there as often as it is asked for.
        assert [chunk async for chunk in got] == [chunk async for chunk in got] \
            == ['{"title": "Zoë"}'.encode()]
        assert got.headers['content-TYPE'] == 'application/json'
        assert got.headers is got.headers
        assert got.headers['x-one'] == 'a, b'
        assert got.headers.get_all('X-One') == ['a', 'b']
        assert got.headers.get_all('x-two') == []
        assert 'X-ONE' in got.headers
        assert 'x-two' not in got.headers
        assert list(got.headers) == ['x-one', 'content-type', 'content-length']
        assert len(got.headers) == 3
        assert list(got.headers.pairs())[:2] == [('x-one', 'a'), ('x-one', 'b')]
        assert repr(got.headers) == '<ResponseHeaders x-one, content-type, content-length>'
        assert got.body.http_version == b'HTTP/1.1'
        assert repr(got) == '<SessionResponse 201>'
        assert got.raise_for_status() is got
        assert (await http.get('/')).url == server.url
        assert (await http.get('/', params={'c': 'd'})).url == server.url + '?c=d'


@on_loops
async def test_no_content_is_no_chunk():
    async with session(response(200)) as (http, _, _):
        assert [chunk async for chunk in await http.get('/')] == []


def test_set_cookie_is_not_joined_without_a_way_to_take_it_apart():
    headers = ResponseHeaders(((b'set-cookie', b'a=1'), (b'set-cookie', b'b=2')))
    assert headers.get_all('Set-Cookie') == ['a=1', 'b=2']


@pytest.mark.parametrize('kind, content, expected', [
    (b'text/plain; charset=ISO-8859-1', b'Zo\xeb', 'Zoë'),
    (b'text/plain; a=b;Charset="utf-16"', 'Zoë'.encode('utf-16'), 'Zoë'),
    (b'text/plain', 'Zoë'.encode(), 'Zoë'),
    (b'text/plain; charset=klingon', 'Zoë'.encode(), 'Zoë'),
    (b'text/plain; charset="', 'Zoë'.encode(), 'Zoë'),
    # These are codecs of Python, and no charsets.
    (b'text/plain; charset=zlib', 'Zoë'.encode(), 'Zoë'),
    (b'text/plain; charset=unicode_escape', b'\\x41', '\\x41'),
    (b'text/plain; charset=a\x80', b'a', 'a'),
    (b'text/plain; charset=utf-8', b'Zo\xeb', 'Zo\ufffd')])
@on_one_loop
async def test_text_is_decoded_by_its_charset_or_as_utf_8(kind, content, expected):
    async with session(response(200, content, b'content-type: ' + kind)) as (http, _, _):
        assert await (await http.get('/')).text() == expected


@on_one_loop
async def test_text_without_a_content_type_is_utf_8():
    async with session(response(200, 'ë'.encode())) as (http, _, _):
        assert await (await http.get('/')).text() == 'ë'


@on_loops
async def test_a_bad_status_is_raised_with_the_beginning_of_the_content():
    async with session(response(404, b'no such item'), response(500, b'x' * 5000)) as (
            http, script, server):
        with pytest.raises(StatusError) as caught:
            (await http.get('/secret', params={'key': 'secret'})).raise_for_status()
        error = caught.value
        assert str(error) == f"GET {server.origin}: 404 Reason: b'no such item'" or re.fullmatch(
            rf"GET {server.origin}: 404 .*: b'no such item'", str(error))
        assert (error.status, error.content) == (404, b'no such item')
        assert await error.response.bytes() == b'no such item'
        assert not isinstance(error, HttpError)
        with pytest.raises(StatusError, match=r": 500 .*: b'x{200}'…$") as caught:
            (await http.post('/')).raise_for_status()
        assert caught.value.content == b'x' * 1000
    assert script.connections == [0, 0]


# --------------------------------------------------------------------------------- streaming


@on_loops
async def test_a_stream_is_read_as_it_comes():
    async def script(peer):
        await peer.read_head()
        await peer.send(head(b'content-length: 4') + b'ab')
        await go_on.wait()
        await peer.send(b'cd')
        await peer.closed()

    go_on = asyncio.Event()
    async with Server(script) as server, Session(server.origin) as http:
        async with http.stream('GET', '/') as got:
            chunks = aiter(got)
            assert await anext(chunks) == b'ab'
            go_on.set()
            assert await got.bytes() == b'cd'
            assert await got.bytes() == b'cd'


@on_loops
async def test_a_stream_that_is_left_is_closed():
    script = holding(head(b'content-length: 10') + b'ab')
    async with Server(script) as server, Session(server.origin) as http:
        async with http.stream('GET', '/') as got:
            pass
        await until(lambda: script.closed == 1)
        with pytest.raises(HttpDataError, match='closed before its end'):
            await got.bytes()
        with pytest.raises(ZeroDivisionError):
            async with http.stream('GET', '/'):
                raise ZeroDivisionError
        await until(lambda: script.closed == 2)


@on_loops
async def test_a_stream_of_a_bad_status_has_its_beginning_in_the_error():
    async with session(response(404, b'no'), response(500, b'x' * 5000)) as (http, script, _):
        for code, content in (404, b'no'), (500, b'x' * 5000):
            async with http.stream('GET', '/') as got:
                with pytest.raises(StatusError) as caught:
                    got.raise_for_status()
                assert (caught.value.status, caught.value.content) == (code, content[:1000])
                # It can still be read as a whole.
                assert await got.bytes() == content
        async with http.stream('GET', '/') as got:
            assert b''.join([chunk async for chunk in got]) == content
            assert got.body.request_sent
    assert script.connections == [0, 0, 0]


@on_loops
async def test_a_bad_status_whose_content_is_cut_off_is_raised_all_the_same():
    async def script(peer):
        await peer.read_head()
        await peer.send(head(b'content-length: 9', start=b'HTTP/1.1 503 Busy') + b'soon')

    async with Server(script) as server, Session(server.origin) as http:
        async with http.stream('GET', '/') as got:
            with pytest.raises(StatusError, match="503 Busy: b'soon'"):
                got.raise_for_status()
            assert re.fullmatch(r'<HeldBody 4 bytes held of <.*>>', repr(got.body))
            with pytest.raises(HttpConnectionClosedError):
                await got.bytes()


@on_loops
async def test_the_held_beginning_of_a_stream_that_was_closed_can_not_be_read():
    async with session(response(404, b'no')) as (http, _, _):
        async with http.stream('GET', '/') as got:
            pass
        await got.body.aclose()
        with pytest.raises(HttpDataError) as caught:
            await got.bytes()
    error = caught.value
    assert str(error) == 'reading the response body: the response body was closed before its end'
    assert type(error.__cause__) is ConnectionAbortedError
    assert (error.phase, error.response_started) == (Phase.CONTENT, True)


@on_loops
async def test_a_status_of_a_stream_from_a_request_of_the_caller_whose_body_tells_no_reason():
    async def request(method, url, **kwargs):
        return b'200', (), yielding(b'a', b'b')

    http = Session(request=request)
    assert await (await http.get('http://a/')).bytes() == b'ab'
    response = await http.request('GET', 'http://a/', is_whole=False)
    response.code = b'400'
    with pytest.raises(StatusError, match="GET http://a: 400 : b''"):
        response.raise_for_status()
    await response.body.aclose()
    await http.aclose()


# ------------------------------------------------------------------------------------ bodies


@on_loops
async def test_json_is_compact_utf_8():
    sent, content = await received(json={'title': 'Zoë', 'tags': [1, None]})
    assert content == '{"title":"Zoë","tags":[1,null]}'.encode()
    assert value(sent, b'content-type') == b'application/json'
    assert value(sent, b'content-length') == b'%d' % len(content)
    async with session() as (http, _, _):
        with pytest.raises(ValueError, match='not JSON compliant'):
            http.post('/', json=float('nan'))


@on_one_loop
async def test_a_form():
    sent, content = await received(data={'name': 'Zoë & Co', 'tag': ['a', 'b']})
    assert content == b'name=Zo%C3%AB+%26+Co&tag=a&tag=b'
    assert value(sent, b'content-type') == b'application/x-www-form-urlencoded'
    async with session() as (http, _, _):
        with pytest.raises(TypeError, match='data must be a mapping or pairs, got bytes: what '
                                            'is encoded already needs no form'):
            http.post('/', data=b'a=b')


@pytest.mark.parametrize('content, expected, kind', [
    (b'ab', b'ab', None), (bytearray(b'ab'), b'ab', None), (memoryview(b'ab'), b'ab', None),
    (b'', b'', None), ('Zoë', 'Zoë'.encode(), b'text/plain; charset=utf-8')])
@on_one_loop
async def test_content_in_memory(content, expected, kind):
    sent, got = await received(content=content)
    assert got == expected
    assert value(sent, b'content-length') == b'%d' % len(expected)
    assert value(sent, b'content-type') == kind


@pytest.mark.parametrize('make', [lambda: yielding(b'a', b'b'), lambda: streamed(b'ab')])
@on_one_loop
async def test_content_of_unknown_length(make):
    async def script(peer):
        heads.append(await peer.read_head())
        contents.append(await peer.read_chunked())
        await peer.send(OK)

    heads, contents = [], []
    async with Server(script) as server, Session(server.origin) as http:
        assert (await http.put('/', content=make())).status == 200
    assert re.sub(rb'\d?\r\n', b'', contents[0]) == b'ab'
    assert contents[0].endswith(b'\r\n0\r\n\r\n')
    assert value(heads[0], b'transfer-encoding') == b'chunked'
    assert value(heads[0], b'content-length') is None


@on_one_loop
async def test_content_whose_length_the_caller_knows():
    sent, content = await received(
        content=streamed(b'ab'), headers={'Content-Length': '2', 'content-type': 'a/b'})
    assert content == b'ab'
    assert values_of(sent, b'content-length') == [b'2']
    sent, content = await received(json=1, headers=[(b'Content-Type', b'application/x+json')])
    assert values_of(sent, b'content-type') == [b'application/x+json']


@pytest.mark.parametrize('content, message', [
    (b'', 'Expecting value'),
    (b'"\xff"', "'utf-8' codec can't decode byte 0xff"),
    (b'[' * 100_000, 'maximum recursion depth|Stack overflow|Expecting value'),
    (b'1' * 10_000, 'Exceeds the limit'),
])
@on_one_loop
async def test_what_is_no_json_has_one_error(content, message):
    async with session(response(200, content)) as (http, _, _):
        answer = await http.get('/')
        with pytest.raises(json.JSONDecodeError, match=message):
            await answer.json()


@on_loops
async def test_a_file_is_sent_from_where_it_is_and_again_after_a_failure(tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(b'x' * 100_000)
    with open(path, 'rb') as file:
        file.seek(10)
        async with session(None, response(307, b'', b'location: /there'), OK) as (http, script, _):
            assert (await http.put('/', content=file)).status == 200
    assert script.bodies == [b'x' * 99_990] * 3
    _, content = await received(content=path)
    assert content == b'x' * 100_000


@on_loops
async def test_one_file_is_sent_by_two_requests_at_once(tmp_path):
    """Each has all of it, although they take turns to read it."""
    async def script(peer):
        sent = await peer.read_head()
        heads.append(sent)
        await until(lambda: len(heads) == 2)
        bodies.append(await peer.read_body(sent))
        await peer.send(OK)

    heads, bodies, content = [], [], random.Random(1).randbytes(2 ** 20)
    path = tmp_path / 'file'
    path.write_bytes(content)
    async with Server(script) as server, Session(
            server.origin, get_sock=small_sending_sock) as http:
        with open(path, 'rb') as file:
            await asyncio.gather(*(http.post('/', content=file) for _ in range(2)))
    assert bodies == [content, content]


def parsed(sent, content):
    """Fields and files, as werkzeug reads them."""
    _, form, files = parse_form_data({
        'REQUEST_METHOD': 'POST', 'wsgi.input': io.BytesIO(content),
        'CONTENT_TYPE': value(sent, b'content-type').decode(),
        'CONTENT_LENGTH': value(sent, b'content-length').decode()})
    found = []
    for name, file in files.items(multi=True):
        found.append((name, file.filename, file.content_type, file.read()))
        file.close()
    return list(form.items(multi=True)), found


@on_one_loop
async def test_a_form_with_files_is_sent_again():
    async with session(None, OK) as (http, script, _):
        await http.put('/', files={'a': io.BytesIO(b'content')})
        await http.put('/', files={'a': ('b', b'c', 'd/e')}, data={'f': ['g', 'h']})
    for sent, content in list(zip(script.heads, script.bodies, strict=True))[:2]:
        assert parsed(sent, content) == (
            [], [('a', 'blob', 'application/octet-stream', b'content')])
    assert parsed(script.heads[2], script.bodies[2]) == (
        [('f', 'g'), ('f', 'h')], [('a', 'b', 'd/e', b'c')])


@pytest.mark.parametrize('options, kind, message', [
    ({'json': 1, 'data': {}}, TypeError, 'json and data are given, but a request has one body: '
                                         'json, content, data, or data and files'),
    ({'json': 1, 'files': {}}, TypeError, 'json and files are given, but a request has one'),
    ({'content': b'', 'data': {}, 'files': {}}, TypeError,
     'data and files and content are given, but'),
    ({'content': 1}, TypeError, 'content must be str, bytes, a binary file, a Path, an async '
                                'iterable of bytes or a function that returns one, got int'),
    ({'files': {'a': 'path'}}, TypeError, 'a file must be bytes, .* got str'),
    ({'content': io.StringIO()}, ValueError, 'must be seekable, and opened for .* bytes'),
    ({'timeout': 0}, ValueError, 'timeout must be seconds, more than 0, or a mapping of total, '
                                 'connect, read, write, pool to seconds or None, got 0'),
    ({'timeout': 'long'}, ValueError, "timeout must be .* got 'long'"),
    ({'timeout': {'all': 1}}, ValueError, "timeout must be .* got {'all': 1}"),
    ({'jsn': 1}, TypeError, "unexpected keyword argument 'jsn'")])
@on_one_loop
async def test_bad_arguments_of_a_request(options, kind, message):
    async with session() as (http, script, _):
        with pytest.raises(kind, match=message):
            await http.post('/', **options)
        with pytest.raises(TypeError, match='url must be a str, got bytes'):
            await http.get(b'/')
    assert script.heads == []


# ------------------------------------------------------------------ base URL, headers, secrets


@pytest.mark.parametrize('url, target', [
    ('/items', '/v1/items'), ('items', '/v1/items'), ('', '/v1'), ('?a=b', '/v1?a=b'),
    ('//evil.test/', '/v1//evil.test/'), ('@evil.test', '/v1/@evil.test'),
    (':1@evil.test', '/v1/:1@evil.test'), ('\\\\evil.test', '/v1/%5C%5Cevil.test'),
    ('https:/evil.test', '/v1/https:/evil.test'), ('/a?b=http://c', '/v1/a?b=http://c')])
@on_one_loop
async def test_a_path_stays_at_the_base_url(url, target):
    async with session(path='/v1/') as (http, script, _):
        await http.get(url)
    assert script.lines == [f'GET {target}']


SECRET = {'X-Key': 'secret', 'Accept': 'text/html', 'User-Agent': 'me/1'}


@on_loops
async def test_the_headers_of_the_session_go_to_its_origin_and_others_get_what_is_harmless():
    async with session(headers=SECRET, auth='token') as (http, script, server), \
            Server(Answering(OK)) as other:
        await http.get('/')
        await http.get(server.url.replace('http', 'HTTP', 1) + 'absolute')
        await http.get(other.url)
    assert [(value(one, b'x-key'), value(one, b'authorization'), value(one, b'accept'),
             value(one, b'user-agent')) for one in (*script.heads, *other.script.heads)] == [
        (b'secret', b'Bearer token', b'text/html', b'me/1'),
        (b'secret', b'Bearer token', b'text/html', b'me/1'),
        (None, None, b'text/html', b'me/1')]


@on_loops
async def test_a_redirect_takes_no_secret_to_another_origin():
    async with Server(Answering(OK)) as other, session(
            response(302, b'', b'location: ' + other.url.encode() + b'a'), headers=SECRET,
            auth=('user', 'password')) as (http, script, _):
        got = await http.get('/', headers={'cookie': 'a=b'})
        assert (got.status, got.url) == (200, other.url + 'a')
        assert [(hop.code, hop.url) for hop in got.history] == [(b'302', other.url + 'a')]
        assert await got.bytes() == b'ok'
    assert value(script.heads[0], b'authorization').startswith(b'Basic ')
    [sent] = other.script.heads
    assert not re.search(rb'(?i)secret|authorization|cookie', sent)


@on_one_loop
async def test_a_header_of_a_request_takes_the_place_of_that_of_the_session():
    async with session(headers={'Accept': 'text/html', 'x-a': ['1', '2']}) as (http, script, _):
        await http.get('/', headers={'accept': ['a/b', 'c/d']})
        await http.get('/', headers=[(b'X-A', 'é')])
    assert values_of(script.heads[0], b'accept') == [b'a/b', b'c/d']
    assert values_of(script.heads[0], b'x-a') == [b'1', b'2']
    assert values_of(script.heads[1], b'x-a') == [b'\xe9']
    assert re.fullmatch(rb'lowhaio/\d\S*', value(script.heads[0], b'user-agent'))


@on_one_loop
async def test_without_a_base_url():
    async with Server(Answering(OK)) as server, Session(headers={'accept': 'a/b'}) as http:
        assert (await http.get(server.url)).status == 200
        with pytest.raises(HttpConnectionError, match='url must start with http:// or https://'):
            await http.get('/')
        assert repr(http) == '<Session without base_url>'
    assert value(server.script.heads[0], b'accept') == b'a/b'


@pytest.mark.parametrize('options', [
    {'auth': 'token'}, {'headers': {'X-Key': 'secret'}}, {'headers': {'authorization': 'secret'}}])
def test_what_is_for_one_origin_needs_one(options):
    with pytest.raises(ValueError, match='^auth, and headers that may tell who asks, need a '
                                         'base_url: they are for its origin only$'):
        Session(**options)


@pytest.mark.parametrize('base', [
    'example.com', '/path', 'ftp://a', 'http://', 'http:///a', 'http://u:p@a/', 'http://a/?b',
    'http://a/#b', b'http://a', 1])
def test_a_bad_base_url(base):
    with pytest.raises(ValueError, match='^base_url must begin with http:// or https:// and a '
                                         'host, and have no user, query and fragment$'):
        Session(base)


def test_a_session_shows_its_origin_only():
    assert repr(Session('HTTPS://Example.com:443/secret', headers=SECRET, auth='secret')) == \
        '<Session https://example.com>'
    assert repr(Session('http://bücher.test')) == '<Session http://bücher.test>'


# --------------------------------------------------------------------------- credentials, layers


@on_loops
async def test_a_token_that_is_asked_for():
    async def get_token():
        return tokens.pop(0)

    tokens = ['old', 'new']
    async with session(response(401), OK, auth=get_token) as (http, script, _):
        assert (await http.get('/')).status == 200
    assert [value(one, b'authorization') for one in script.heads] == [b'Bearer old', b'Bearer new']


@pytest.mark.parametrize('auth', [3, ('user',), ['user', 'password']])
def test_bad_credentials(auth):
    kind = type(auth).__name__
    with pytest.raises(TypeError, match='^auth must be a pair of user name and password, a token, '
                                        f'or a function that returns one, got {kind}$'):
        Session('http://a', auth=auth)


@on_one_loop
async def test_layers_of_ones_own_see_each_attempt():
    def counted(request):
        async def counted_request(method, url, **kwargs):
            seen.append(sorted(kwargs))
            return await request(method, url, **kwargs)
        return counted_request

    seen = []
    challenge = response(401, b'', b'www-authenticate: Digest realm="a", nonce="b", qop="auth"')
    async with Server(Answering(None, challenge, OK)) as server, Session(
            server.origin, layers=[
                counted, partial(digest, username='user', password='password')]) as http:
        assert (await http.get('/')).status == 200
    assert len(server.script.heads) == 3
    assert value(server.script.heads[2], b'authorization').startswith(b'Digest ')
    # The attempts, with nothing that a request of lowhaio does not take.
    assert seen == [['body', 'body_args', 'body_kwargs', 'headers', 'params']] * 2


@on_loops
async def test_cookies_are_kept_if_that_is_wanted():
    answer = response(200, b'', b'set-cookie: a=b')
    jar = CookieJar()
    for option, expected in (False, None), (True, b'a=b'), (jar, b'a=b'):
        async with session(answer, cookies=option) as (http, script, _):
            await http.get('/')
            await http.get('/')
        assert value(script.heads[1], b'cookie') == expected
    assert len(jar) == 1


@on_loops
async def test_compressed_content():
    import gzip
    answer = response(200, gzip.compress(b'hello'), b'content-encoding: gzip')
    async with session(answer) as (http, script, _):
        assert await (await http.get('/')).bytes() == b'hello'
    assert b'gzip' in value(script.heads[0], b'accept-encoding')
    async with session(answer, decompress=False) as (http, script, _):
        assert await (await http.get('/')).bytes() == gzip.compress(b'hello')
    assert value(script.heads[0], b'accept-encoding') is None


@on_loops
async def test_the_low_level_request_has_the_layers_and_streams():
    there = response(302, b'', b'location: /there')
    async with session(None, there, OK, auth='a') as (http, script, server):
        code, _, body = await http.low_level(b'GET', server.url, (('a', 'b'),))
        assert (code, await buffered(body)) == (b'200', b'ok')
    assert script.lines == ['GET /?a=b', 'GET /?a=b', 'GET /there']
    assert value(script.heads[2], b'authorization') == b'Bearer a'
    script = holding(head(b'content-length: 10') + b'ab')
    async with Server(script) as server, Session(server.origin) as http:
        code, _, body = await http.low_level(b'GET', server.url)
        assert (code, await anext(body)) == (b'200', b'ab')
        await body.aclose()
    async with session(OK, retries=0, redirects=0, decompress=False) as (http, script, server):
        await buffered((await http.low_level(b'GET', server.url, (('a', 'b'),)))[2])
    assert script.lines == ['GET /?a=b']


@on_loops
async def test_a_request_in_place_of_a_pool_is_not_closed():
    request, close = Pool()
    async with Server(Answering(OK)) as server:
        async with Session(server.origin, request=request) as http:
            assert (await http.get('/')).status == 200
        await buffered((await request(b'GET', server.url))[2])
        await close()
    with pytest.raises(TypeError, match='^request and socket_timeout are both given: options are '
                                        'for the pool that a session makes itself$'):
        Session(request=request, socket_timeout=1)


@pytest.mark.parametrize('limits', [1, {'max_connections': 1}])
@on_clock
async def test_limits_of_connections(limits):
    async with Server(holding(head(b'content-length: 10'))) as server, \
            Session(server.origin, limits=limits, pool_timeout=3) as http:
        async with http.stream('GET', '/'):
            task = await ends_after(3, http.get('/'))
            assert str(task.exception()).endswith('pool_timeout, 3 seconds, passed')


@pytest.mark.parametrize('limits, connections', [
    ({'max_requests_per_connection': 1}, 2), ({'max_idle_connections': 0}, 2),
    ({'keep_alive_timeout': 0}, 2), ({'max_connections': None, 'pool_timeout': None}, 1),
    ({'max_connections_per_origin': 1}, 1), ({}, 1), (None, 1)])
@on_one_loop
async def test_limits_are_those_of_the_pool(limits, connections):
    async with session(OK, limits=limits) as (http, script, _):
        await http.get('/')
        await http.get('/')
    assert len(set(script.connections)) == connections


@on_clock
async def test_the_defaults_of_limits_that_are_not_given():
    async with Server(holding(head(b'content-length: 10'))) as server, \
            Session(server.origin, limits={'max_connections': 1}) as http:
        async with http.stream('GET', '/'):
            task = await ends_after(10, http.get('/'))
            assert str(task.exception()).endswith('pool_timeout, 10 seconds, passed')


@pytest.mark.parametrize('limits, options, kind, message', [
    ({'max_conections': 1}, {}, ValueError,
     'limits must be a number of connections, or a mapping of max_connections, '
     'max_connections_per_origin, max_idle_connections, max_requests_per_connection, '
     "pool_timeout, keep_alive_timeout to numbers or None, got {'max_conections': 1}"),
    ({'socket_timeout': 1}, {}, ValueError, "limits must .* got {'socket_timeout': 1}"),
    ('many', {}, ValueError, "limits must .* got 'many'"),
    (0, {}, ValueError, 'max_connections must be a number, 1 or more, or None, got 0'),
    (1, {'max_connections': 1}, TypeError,
     'max_connections is given twice: in limits, and as an option'),
    ({'pool_timeout': 1}, {'pool_timeout': 1}, TypeError, 'pool_timeout is given twice: in '),
    (1, {'request': lambda: None}, TypeError, 'request and max_connections are both given')])
def test_bad_limits(limits, options, kind, message):
    with pytest.raises(kind, match=f'^{message}'):
        Session(limits=limits, **options)


@on_loops
async def test_options_of_the_pool_pass_through():
    async def get_connection(*_):
        raise OSError('no way')

    async with Session('http://a', get_connection=get_connection, retries=0) as http:
        assert 'no way' in str(await failure(http.get('/')))
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_conections'"):
        Session(max_conections=1)
    with pytest.raises(HttpConnectionError, match='the pool is closed'):
        await http.get('/')


# ---------------------------------------------------------------------------- retries, redirects


@on_loops
async def test_content_that_is_cut_off_is_asked_for_again():
    async def script(peer):
        await peer.read_head()
        await peer.send(CUT_OFF if peer.index == 0 else OK)

    async with Server(script) as server, Session(server.origin) as http:
        assert await (await http.get('/')).bytes() == b'ok'
    assert len(server.peers) == 2


@on_loops
async def test_a_post_is_not_made_again_and_neither_is_anything_without_retries():
    async def script(peer):
        await peer.read_head()
        await peer.send(CUT_OFF)

    async with Server(script) as server, Session(server.origin) as http:
        assert isinstance(await failure(http.post('/')), HttpConnectionClosedError)
    assert len(server.peers) == 1
    async with Server(script) as server, Session(server.origin, retries=0) as http:
        assert isinstance(await failure(http.get('/')), HttpConnectionClosedError)
    assert len(server.peers) == 1


@on_one_loop
async def test_any_number_of_retries():
    async with session(None, OK, retries=5_000) as (http, script, _):
        assert (await http.get('/')).status == 200
    assert len(script.heads) == 2


@on_one_loop
async def test_how_often_and_when_it_is_made_again(monkeypatch):
    async def sleep(seconds):
        slept.append(seconds)

    slept = []
    monkeypatch.setattr('lowhaio_retry.sleep', sleep)
    async with session(None, retries=9) as (http, script, _):
        assert isinstance(await failure(http.get('/')), HttpConnectionClosedError)
    assert slept == [0, 0.5, 1, 2, 4, 8, 16, 30, 30]
    assert len(script.heads) == 10
    layer = partial(retry, code_intervals=((b'503', (0,)),))
    async with session(response(503, b'busy'), OK, retries=layer) as (http, script, _):
        assert (await http.get('/')).status == 200


@on_loops
async def test_redirects():
    there = response(302, b'moved', b'location: /there')
    async with session(there, redirects=0) as (http, _, _):
        got = await http.get('/')
        assert (got.status, await got.bytes()) == (302, b'moved')
    async with session(there, redirects=1) as (http, script, _):
        assert 'passes max_redirects, 1' in str(await failure(http.get('/')))
    async with session(there, OK, redirects=redirectable) as (http, script, server):
        got = await http.post('/', json={})
        assert got.url == server.url + 'there'
    assert script.lines == ['POST /', 'GET /there']


@on_loops
async def test_no_more_of_a_redirect_is_read_than_is_worth_it():
    async def script(peer):
        await peer.read_head()
        if peer.index == 0:
            await peer.send(head(b'location: /there', b'content-length: %d' % 10 ** 9,
                                 start=b'HTTP/1.1 302 Found'), bytes(1_000_000))
            await peer.closed()
        else:
            await peer.send(OK)

    async with Server(script) as server, Session(server.origin) as http:
        assert await (await http.get('/')).bytes() == b'ok'


@pytest.mark.parametrize('name', ['retries', 'redirects'])
def test_bad_numbers(name):
    for number in (-1, 'many', None):
        with pytest.raises(ValueError, match=f'^{name} must be a number, 0 or more, or a layer, '
                                             f'got {number!r}$'):
            Session(**{name: number})


# ---------------------------------------------------------------------------------------- time


async def silent(peer):
    await peer.read_head()
    await forever()


@pytest.mark.parametrize('script', [
    silent, holding(b'HTTP/1.1 2'), holding(head(b'content-length: 10') + b'ab')])
@on_clock
async def test_the_total_time_of_a_request(script):
    async with Server(script) as server, Session(server.origin, timeout=5) as http:
        task = await ends_after(5, http.get('/secret'), lambda: server.peers)
        error = task.exception()
        assert type(error) is HttpDataError
        assert str(error) == f'GET {server.origin}: timeout, 5 seconds, passed'
        assert type(error.__cause__) is TimeoutError
        assert str(error.__cause__) == 'timeout, 5 seconds, passed'


@on_clock
async def test_the_total_time_of_a_request_that_failed_before_tells_of_that():
    async def script(peer):
        await peer.read_head()
        if peer.index:
            await forever()

    async with Server(script) as server, Session(server.origin, timeout=60) as http:
        task = await ends_after(5, http.get('/', timeout=5), lambda: len(server.peers) == 2)
        error = task.exception()
        last = error.__cause__.__cause__
        assert type(last) is HttpConnectionClosedError
        assert str(error) == (
            f'GET {server.origin}: timeout, 5 seconds, passed (the last failure: {last})')
        assert (error.phase, error.response_started) == (last.phase, False)
        assert error.phase == Phase.HEAD


@on_loops
async def test_an_error_is_in_no_cycle():
    async def request(method, url, **kwargs):
        if made.append(url) or len(made) == 1:
            raise HttpDataError('the first')
        await forever()

    made = []
    gc.collect()
    gc.disable()
    try:
        try:
            await Session(request=request, timeout=0.01).get('http://a/')
        except HttpDataError as error:
            last = weakref.ref(error.__cause__.__cause__)
            assert str(last()) == 'the first'
        assert last() is None
    finally:
        gc.enable()


@on_clock
async def test_a_total_time_that_passes_between_attempts():
    async def get_connection(*_):
        raise OSError('no way')

    async with Session('http://a', get_connection=get_connection, timeout=0.1) as http:
        task = await ends_after(0.1, http.get('/'))
        assert str(task.exception()).startswith('GET http://a: timeout, 0.1 seconds, passed (the '
                                                'last failure: GET http://a:80')
        assert 'no way' in str(task.exception())
        assert task.exception().phase == Phase.CONNECT


@on_clock
async def test_the_total_time_of_a_stream_is_that_of_its_beginning():
    script = holding(head(b'content-length: 10') + b'ab')
    async with Server(script) as server, Session(server.origin) as http:
        async with http.stream('GET', '/', timeout=5) as got:
            task = await ends_after(10, got.bytes())  # the time to read
        assert 'timeouts' not in str(task.exception())
        # What is read of a bad status is of the beginning.
    script = holding(head(b'content-length: 10', start=b'HTTP/1.1 404 No') + b'ab')
    async with Server(script) as server, Session(server.origin) as http:
        stream = http.stream('GET', '/', timeout=5)
        task = await ends_after(5, stream.__aenter__(), lambda: script.sent)
        assert task.exception().response_started
        await until(lambda: script.closed)


@pytest.mark.parametrize('own, seconds, message', [
    (None, 3, r"timeouts\['read'\], 3 seconds, passed"),
    ({'read': 2}, 2, r"timeouts\['read'\], 2 seconds, passed"),
    ({'total': 1}, 1, 'timeout, 1 seconds, passed'), (1, 1, 'timeout, 1 seconds, passed'),
    ({'read': None, 'total': None}, None, None)])
@on_clock
async def test_times_of_phases(own, seconds, message):
    async with Server(silent) as server, Session(
            server.origin, timeout={'read': 3, 'total': 4}, retries=0) as http:
        if seconds is not None:
            task = await ends_after(seconds, http.get('/', timeout=own), lambda: server.peers)
            assert re.search(message, str(task.exception()))
        else:
            task = asyncio.ensure_future(http.get('/', timeout=own))
            await until(lambda: server.peers)
            await turns(20)
            # The longest time that lowhaio has: some thirty years.
            assert asyncio.get_running_loop().next_due() >= 1e9
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


@on_loops
async def test_a_time_that_does_not_pass_changes_nothing():
    async def late(method, url, **kwargs):
        raise TimeoutError('of a layer')

    async with session(timeout=60) as (http, _, _):
        assert (await http.get('/')).status == 200
        assert cancelling() == 0
    with pytest.raises(TimeoutError, match='of a layer'):
        await Session(request=late, timeout=60).get('http://a/')


# -------------------------------------------------------------------------------- cancellation


class Steps:
    """A request that can be cancelled at each of its steps."""

    def __init__(self, *chunks, code=b'200'):
        self.chunks = list(chunks)
        self.code = code
        self.has_returned = self.is_closed = False

    async def __call__(self, method, url, **kwargs):
        await asyncio.sleep(0)
        self.has_returned = True
        return self.code, (), self

    def __aiter__(self):
        return self

    async def __anext__(self):
        await asyncio.sleep(0)
        if not self.chunks:
            raise StopAsyncIteration
        return self.chunks.pop(0)

    async def aclose(self):
        self.is_closed = True
        await asyncio.sleep(0)


@pytest.mark.parametrize('method', ['request', 'stream'])
@pytest.mark.parametrize('code', [b'200', b'302', b'404'])
@pytest.mark.parametrize('timeout', [None, 60])
@on_loops
async def test_cancellation_at_each_step(method, code, timeout):
    async def use(http):
        if method == 'request':
            return await (await http.get('http://a/')).bytes()
        async with http.stream('GET', 'http://a/') as got:
            return await got.bytes()

    for steps in range(30):
        request = Steps(b'a', b'b', code=code)
        task = asyncio.create_task(use(Session(request=request, timeout=timeout)))
        await turns(steps)
        was_done = task.done()
        task.cancel('why')
        if was_done:
            assert await task == b'ab'
            break
        with pytest.raises(asyncio.CancelledError, match='why'):
            await task
        assert task.cancelling() == 1
        if method == 'stream':
            assert request.is_closed == request.has_returned
    assert was_done
    assert steps > 3


@on_loops
async def test_a_cancelled_request_leaves_nothing():
    script = holding(head(b'content-length: 10') + b'ab')
    async with Server(script) as server, Session(server.origin, timeout=60) as http:
        for number in range(1, 3):
            task = asyncio.create_task(http.get('/'))
            await until(lambda number=number: script.sent == number)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda number=number: script.closed == number)


@on_loops
async def test_a_place_in_the_pool_is_free_after_each_response():
    """Whether or not anybody reads it."""
    large = response(200, b'x' * 1_000_000)
    async with session(large, max_connections=1, pool_timeout=0.01) as (http, script, _):
        for _ in range(3):
            await http.get('/')
        async with http.stream('GET', '/'):
            error = await failure(http.get('/'))
            assert str(error).endswith('pool_timeout, 0.01 seconds, passed')
        assert (await http.get('/')).status == 200


@on_clock
async def test_there_are_100_connections_and_it_takes_10_seconds_to_wait_for_one():
    script = holding(head(b'content-length: 10'))
    async with Server(script) as server, Session(server.origin) as http, \
            contextlib.AsyncExitStack() as stack:
        for _ in range(100):
            await stack.enter_async_context(http.stream('GET', '/'))
        task = await ends_after(10, http.get('/'))
        assert str(task.exception()).endswith('pool_timeout, 10 seconds, passed')


# ----------------------------------------------------------------------------------- stacking


def test_the_first_layer_is_the_outermost():
    def outer(request):
        return f'outer({request()})'

    def inner(request):
        return lambda: f'inner({request()})'

    assert compose(lambda: 'request', outer, inner) == 'outer(inner(request))'
    request = compose(len)
    assert request is len
    for bad in ((3,), (len, 'retry')):
        with pytest.raises(TypeError, match='^compose needs a request and layers, got '
                                            f'{type(bad[-1]).__name__}$'):
            compose(*bad)


# -------------------------------------------------------------------------------------- README


def answer_example(head, body):
    if b'/missing' in head:
        return response(404, b'no such item')
    return response(200, json.dumps({'items': [1, 2]}).encode(), b'content-type: application/json')


@pytest.mark.parametrize('block', python_blocks(README))
def test_readme(block, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path('report.pdf').write_bytes(b'%PDF')
    with internet(Answering(answer_example)):
        run_block(block)
    assert capsys.readouterr().out
