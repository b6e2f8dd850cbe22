"""Tests of what each layer passes on: the keywords of a request, and the attributes of a body.

What a layer makes of a target or of a server's name is tested beside that layer.
"""

import gzip
from functools import partial
from http.cookiejar import CookieJar

import pytest
from opentelemetry.sdk.trace import TracerProvider

import lowhaio_aws_sigv4_streaming
import lowhaio_aws_sigv4_unsigned_payload
from lowhaio import HttpDataError, buffered
from lowhaio_auth import basic, bearer, digest
from lowhaio_aws_sigv4 import signed
from lowhaio_aws_sigv4_streaming import checked
from lowhaio_compression import decompressed
from lowhaio_cookies import with_cookies
from lowhaio_opentelemetry import Telemetry, counted
from lowhaio_redirect import redirectable
from lowhaio_retry import retry
from lowhaio_session import Session, compose
from tests.harness import (
    OK,
    Answering,
    Server,
    certified,
    connecting_to,
    get,
    holding,
    measured,
    on_clock,
    on_loops,
    pool,
    response,
    trusting,
    where,
)


async def get_token():
    return 'token'


async def get_credentials():
    return 'id', 'secret', ()


def all_of_them(request):
    return compose(
        request, counted, decompressed, redirectable, partial(retry, exception_intervals=()),
        Telemetry(TracerProvider()).traced, partial(with_cookies, jar=CookieJar()),
        partial(basic, username='user', password='password'))


LAYERS = {
    'basic': lambda request: basic(request, 'user', 'password'),
    'bearer': lambda request: bearer(request, get_token),
    'digest': lambda request: digest(request, 'user', 'password'),
    'sigv4': lambda request: signed(request, get_credentials, 's3', 'eu-west-2'),
    'unsigned payload': lambda request: lowhaio_aws_sigv4_unsigned_payload.signed(
        request, get_credentials, 's3', 'eu-west-2'),
    'streaming': lambda request: lowhaio_aws_sigv4_streaming.signed(
        request, get_credentials, 's3', 'eu-west-2'),
    'checked': checked,
    'decompressed': decompressed,
    'cookies': lambda request: with_cookies(request, CookieJar()),
    'redirect': redirectable,
    'retry': lambda request: retry(request, ()),
    'retry, buffered': lambda request: retry(request, (), max_buffered=1000),
    'traced': Telemetry(TracerProvider()).traced,
    'counted': counted,
    'session': lambda request: Session(request=request, retries=0).low_level,
    'all of them': all_of_them,
}
around = pytest.mark.parametrize('layer', LAYERS.values(), ids=LAYERS)


@around
@on_loops
async def test_a_target_is_sent_as_it_is_given(layer):
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        request = layer(request)
        for target in (b'/a[b]|{c}?d=[e]&"\xff"', b'/%7e//../%2f#x', server.url.encode() + b'a|b'):
            assert (await get(request, server.url + 'other', target=target))[0] == b'200'
            assert script.heads.pop().startswith(b'GET ' + target + b' HTTP/1.1\r\n')


@around
@on_clock
async def test_a_request_has_its_own_times(layer):
    async with Server(holding(b'')) as server, pool() as request:
        seconds, task = await measured(layer(request)(
            b'GET', server.url, timeouts={'read': 0.5}))
        error = task.exception()
    assert seconds == 0.5
    assert (type(error), type(error.__cause__)) == (HttpDataError, TimeoutError)
    assert str(error).startswith(f'{where(server)}reading the response head: TimeoutError: ')
    assert error.phase == 'head'


@around
@on_loops
async def test_a_server_may_have_another_name_than_its_url(layer):
    names = []
    context = certified('a.example')
    context.sni_callback = lambda sock, name, context: names.append(name)
    async with Server(Answering(OK), context) as server:
        async with pool(get_ssl_context=trusting) as request:
            code, _, _ = await get(layer(request), server.url, server_hostname='a.example')
    assert (code, names) == (b'200', ['a.example'])


# What makes the last response one whose body the layer wraps.
FIRST = {'redirect': [response(302, b'', b'location: /b')]}
FIRST['all of them'] = FIRST['redirect']
CODES = {'bearer': 401}


@pytest.mark.parametrize('name', LAYERS)
@on_loops
async def test_what_the_body_tells_is_that_of_the_pool(name):
    content = gzip.compress(b'ok')
    checksum = lowhaio_aws_sigv4_streaming.checksum('crc32')
    checksum.update(content)
    last = (b'HTTP/1.1 %d Fine\r\ncontent-encoding: gzip\r\nx-amz-checksum-crc32: %b\r\n'
            b'content-length: %d\r\n\r\n%b') % (
        CODES.get(name, 200), checksum.base64(), len(content), content)
    async with Server(Answering(*FIRST.get(name, []), last)) as server, pool() as request:
        _, _, body = await LAYERS[name](request)(b'GET', server.url)
        await buffered(body)
        assert (body.http_version, body.reason) == (b'HTTP/1.1', b'Fine')
        assert body.connection.peer == ('127.0.0.1', server.port)
        assert body.connection.tls_version is None
        assert (body.trailers, body.request_sent) == ((), True)


@on_loops
async def test_the_time_of_a_request_counts_for_each_request_that_a_layer_makes():
    """A time that was used up, by a redirect for example, would be a time for the whole."""
    async with Server(Answering(response(302, b'', b'location: /b'), OK)) as server:
        async with pool(get_connection=connecting_to(http=server.port)) as request:
            kept = {'read': 1, 'pool': None}
            code, _, _ = await get(redirectable(request), 'http://a.example/', timeouts=kept)
    assert (code, kept) == (b'200', {'read': 1, 'pool': None})
