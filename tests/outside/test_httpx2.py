"""What users of httpx2 and of classic httpx expect of an async transport.

Each check runs on the transport that these have themselves, which is called stock here, and then
on that of lowhaio. So a check that has misunderstood what is promised fails before lowhaio is
asked. Where lowhaio differs on purpose, `DIFFERENCES` has a row with the reason, and the check
states what each of the two does. Where only the wording differs, there is no row.

Seen with httpx2 2.16.2 (httpcore2 2.16.2) and httpx 0.28.1 (httpcore 1.0.9).
"""

import ast
import asyncio
import base64
import contextlib
import functools
import gc
import gzip
import hashlib
import inspect
import io
import json
import logging
import math
import os
import pathlib
import socket
import ssl
import stat
import subprocess
import sys
import threading
import warnings
from typing import NamedTuple

import aiodnsresolver
import anyio
import h11
import httpcore
import httpcore2
import httpx
import httpx2
import httpx_sse
import httpx_ws
import lowhaio_httpx
import lowhaio_httpx2
import pytest
import trio
import uvloop
import trustme
import websockets.asyncio.server

import lowhaio
from tests.harness import (
    BLOCKING,
    CHUNKED,
    CLOCKED,
    CONTINUE,
    HINTS,
    LARGE,
    LOOPS,
    OK,
    ROOT,
    UNFINISHED,
    AnsweringInThreads,
    Answering,
    Server,
    ServerAt,
    Streams,
    ThreadServer,
    authority,
    bound_to,
    bound_to_each,
    certified,
    chunked,
    cut_into_bytes,
    deaf_server,
    forever,
    full_backlog,
    head,
    holding,
    no_address,
    nothing_left,
    passing,
    patience,
    resolving,
    response,
    row,
    run_on,
    server_context,
    settling,
    trusting,
    turns,
    unix_streams,
    until,
    value,
    values_of,
)

# -------------------------------------------------------------------------------- what is compared


class Difference(NamedTuple):
    """What lowhaio's transports do on purpose in another way than stock, and why."""

    what: str
    stock: str
    ours: str
    why: str


DIFFERENCES = {
    'tls-end': Difference(
        'A body without a length, in TLS, ends without close_notify',
        'it counts as complete', '`RemoteProtocolError`',
        'anybody on the way could have cut it off'),
    'head-time': Difference(
        'The head of a response trickles in',
        'each byte renews the read time', 'the read time is for the whole head: `ReadTimeout`',
        'otherwise a server can hold a request for as long as it likes'),
    'write-progress': Difference(
        'A large chunk of a body goes out slowly but steadily',
        'the write time is for the whole chunk: `WriteTimeout`', 'each progress renews it',
        'the time is for a connection that is stuck'),
    'early-break': Difference(
        'A body is not read to its end, but what is left is there and small',
        'the connection is closed', 'the rest is taken, and the connection used again',
        'a new connection costs more'),
    'arrived': Difference(
        'A response has arrived whole, and was not read',
        'it keeps its place', 'it has none any more',
        'another request can have it'),
    'dropped': Difference(
        'A response is dropped without being read or closed',
        'its place in the pool is lost for good', 'the connection is closed, the place is free',
        'a pool must not run dry'),
    'handshake-cancelled': Difference(
        'A request is cancelled in the TLS handshake',
        'the connection is left open, until it is collected as garbage', 'it is closed',
        'nothing is left of a request'),
    'length': Difference(
        'A body is longer or shorter than its content-length',
        "h11's `LocalProtocolError`, which is none of the library's",
        '`LocalProtocolError` of the library',
        'who catches the errors of the library must get them'),
    'early-response': Difference(
        'A response of 300 or above comes while the body is sent, and the server reads no more',
        '`WriteTimeout`', 'the sending ends, and the response is returned',
        'the server has said all that it will say'),
    'expect': Difference(
        'A request has `expect: 100-continue`',
        'the body is sent at once', 'it waits for the 100, for a second at most',
        'that is what the field is for'),
    'sni': Difference(
        'A request has another `sni_hostname` than a kept connection to its host',
        'the connection is used', 'a connection of its own is made',
        'the certificate was checked for another name'),
    'loops': Difference(
        'A transport is used in a second event loop, the first one is closed',
        "`RuntimeError`, on asyncio's loop, if a connection was kept", 'it works',
        'tests and scripts call `asyncio.run` more than once'),
    'trio': Difference(
        'A request is made under trio',
        'it works', '`RuntimeError` that names asyncio',
        'lowhaio is for asyncio'),
    'http2': Difference(
        'A transport with `http1=False, http2=True`',
        'it speaks HTTP/2 if `h2` is installed', '`ValueError` when it is made',
        'lowhaio speaks HTTP/1.1'),
    'alpn': Difference(
        'A transport with `http2=True`',
        'it offers h2 and http/1.1', 'it offers http/1.1',
        'lowhaio speaks HTTP/1.1'),
    'field-names': Difference(
        'The names of the fields of a response, in `headers.raw`',
        'as they came', 'in lower case',
        'names have no case, and look-ups have none either'),
    'version': Difference(
        'A status line whose version is not HTTP/1.x',
        'it is taken', '`RemoteProtocolError`',
        'nothing is known of how such a response is framed'),
    'connect-time': Difference(
        'The connect time',
        'is for the name and TCP together, and once more for TLS', 'is for all of them together',
        'it is how long somebody waits'),
    'names': Difference(
        'A host name',
        'is looked up in a thread', 'is looked up without one',
        'lowhaio makes no threads'),
    'sessions': Difference(
        'A second connection to a server of TLS',
        'has a full handshake', 'goes on with the session of the first',
        'it costs less'),
    'socket-options': Difference(
        '`socket_options`',
        'are set when the socket is connected', 'are set before',
        'some have no effect later'),
    'start-tls': Difference(
        '`start_tls` of the network stream',
        'works', '`NotImplementedError`',
        'lowhaio makes TLS when it connects'),
    'http10': Difference(
        'A response of HTTP/1.0 with `connection: keep-alive`',
        'its connection is closed', 'its connection is used again',
        'the server has said that it may be'),
    'keep-alive': Difference(
        'A response with `keep-alive: timeout=N`',
        'the connection may idle for `keepalive_expiry` seconds', 'at most N − 1 seconds',
        'a request must not meet the hanging up of the server'),
    'proxy-options': Difference(
        '`retries`, `local_address` or `socket_options` beside `proxy`',
        'are ignored', 'count for the connections to the proxy',
        'who gives them wants them'),
    'websocket-proxy': Difference(
        'A `ws://` URL through a proxy of HTTP',
        'a tunnel, and then TLS, which the server does not speak: `ConnectError`',
        'a tunnel without TLS',
        'it is what the URL says'),
    'length-and-coding': Difference(
        'The caller gives `content-length` beside `transfer-encoding`',
        'both are sent', 'only the coding is sent',
        'RFC 9112 forbids both: what is read differently by two servers is dangerous'),
    'coding': Difference(
        'The caller gives `transfer-encoding: gzip, chunked`',
        '`LocalProtocolError`', 'the body is sent in chunks',
        'who gives a coding has coded the body'),
    'target': Difference(
        'A `target` extension with bytes that are not ASCII',
        '`LocalProtocolError`', 'sent as given',
        'who gives bytes wants these bytes'),
    'host': Difference(
        'The caller gives `host`, and not as the first field',
        'it is sent first', 'it is sent where the caller has put it',
        'what is sent is what the caller gave'),
    'refused': Difference(
        'A request that can not be sent, as for an illegal field',
        'a connection is made for it, and closed', 'no connection is made',
        'it is refused before that'),
    'connect': Difference(
        'A request with the method CONNECT',
        'a tunnel', '`LocalProtocolError`',
        'the transport makes tunnels itself, with `proxy=`'),
    'tls-proxy': Difference(
        'A proxy whose URL is `https://`',
        'it is reached by TLS', '`ValueError` when the transport is made',
        'it is rare; TLS inside TLS is not there'),
    'tunnel-time': Difference(
        'A proxy that does not answer CONNECT',
        '`ReadTimeout`, after the read time', '`ConnectTimeout`, after the connect time',
        'there is no connection yet'),
    'trace': Difference(
        'The `trace` extension',
        'is called before and after each step',
        'is called after the head of the response, and for what follows',
        'the layer does not see the steps of connecting and sending'),
    'ssl_object': Difference(
        "`get_extra_info('ssl_object')` of the network stream",
        'is an `ssl.SSLObject`',
        'has `version()`, `cipher()` and `getpeercert(binary_form=True)`, also afterwards',
        'the connection is not the response\'s alone'),
    'socket': Difference(
        "`get_extra_info('socket')` of the network stream",
        'is the socket', 'is None',
        'who reads from it breaks the connection'),
    'host-name': Difference(
        'A host that can be no name, as with a label of more than 63 characters',
        '`ConnectError`, after it was looked up', '`LocalProtocolError`',
        'it is refused before anything else'),
    'aclose': Difference(
        '`aclose()` of the transport while a response is read',
        'its connection is closed: `ReadError`', 'it closes when its response ends',
        'clients share transports'),
    'messages': Difference(
        'What errors of time-outs say',
        'nothing', 'what was waited for, how long, and where',
        'somebody has to find out'),
}


# What the README of the layer for httpx2 says of them. The others are too small for it.
SAID = {
    'tls-end': 'a TLS connection that ends without close_notify',
    'head-time': '`read` begins anew with each piece of a head',
    'write-progress': '`write` is for each progress of sending',
    'early-break': 'A stream that is closed early keeps its connection',
    'arrived': 'a response has its connection until its stream is closed',
    'dropped': 'is dropped without being read or closed keeps its place',
    'handshake-cancelled': 'a cancellation during the TLS handshake',
    'length': 'a body that is longer than its `content-length`',
    'early-response': 'the whole request is sent before the response is read',
    'expect': 'a body is sent at once after `expect: 100-continue`',
    'loops': 'several `asyncio.run`, one after the other',
    'trio': '| trio | a RuntimeError that names asyncio |',
    'http2': '`http2` without `http1` is a ValueError',
    'alpn': 'ALPN is `http/1.1`',
    'field-names': '`headers.raw` of a response is as it came',
    'connect': 'HTTP/2, `CONNECT` as a method, a proxy that is reached by TLS',
    'tls-proxy': 'a proxy that is reached by TLS',
    'tunnel-time': 'TCP, what a proxy needs, and TLS, together',
    'trace': '`trace` is called with all that happens',
    'ssl_object': "`'ssl_object'` has `version()`, `cipher()`",
    'socket': "`start_tls` and `'socket'` of `network_stream`",
    'start-tls': "`start_tls` and `'socket'` of `network_stream`",
    'connect-time': '`connect` is for TCP, and then once more for TLS',
    'names': 'names by `getaddrinfo`, in a thread',
    'sessions': 'TLS sessions are not resumed',
    'socket-options': '`socket_options` are set once it is connected',
    'proxy-options': '`local_address` and `retries` are ignored with a proxy',
    'aclose': '`aclose` closes connections in use',
    'messages': 'with the messages of lowhaio',
    'keep-alive': "A server's own `keep-alive: timeout` lowers",
}


class Kit:
    """A library with one of the transports for it."""

    def __init__(self, library, is_ours):
        self.http = {'httpx2': httpx2, 'httpx': httpx}[library]
        self.core = {'httpx2': httpcore2, 'httpx': httpcore}[library]
        self.library = library
        self.is_ours = is_ours
        self.layer = {'httpx2': lowhaio_httpx2, 'httpx': lowhaio_httpx}[library]
        self.Transport = (
            self.layer.LowhaioTransport if is_ours else self.http.AsyncHTTPTransport)
        self.Client = self.layer.LowhaioAsyncClient if is_ours else self.http.AsyncClient

    def __repr__(self):
        return f'{self.library}-{"ours" if self.is_ours else "stock"}'

    def differs(self, name, *, stock, ours):
        """What is expected, in a case in which the two differ."""
        assert name in DIFFERENCES
        return ours if self.is_ours else stock

    def transport(self, *, limits=None, **options):
        """A transport which trusts the authority of the tests. Limits may be a dict."""
        if limits is not None:
            options['limits'] = self.http.Limits(**limits)
        return self.Transport(**{'verify': trusting(), **options})

    def client(self, *, client=(), **options):
        """The library's own client, with such a transport."""
        return self.http.AsyncClient(transport=self.transport(**options), **dict(client))

    def timeout(self, **times):
        """Of these times, and the others are None, which means never."""
        return self.http.Timeout(None, **times)

    @contextlib.asynccontextmanager
    async def talking(self, *responses, context=None, **options):
        """A client, a server that gives these responses, and the script of the server."""
        script = responses[0] if responses and callable(responses[0]) else Answering(
            *responses or [OK])
        async with Server(script, context) as server, self.client(**options) as client:
            yield client, server, script

    async def failure(self, name, awaitable):
        """The error, whose class is exactly this one of the library, as a user needs it."""
        error = await raised(awaitable)
        assert type(error) is getattr(self.http, name), repr(error)
        assert isinstance(error.request, self.http.Request)
        if self.is_ours:
            assert str(error), 'an error that says nothing'
        return error


KITS = {library: [Kit(library, is_ours) for is_ours in (False, True)]
        for library in ('httpx2', 'httpx')}


def check(test=None, *, kinds=LOOPS, libraries=tuple(KITS)):
    """Run an async test function with each kit, on each loop. What stock leaves behind is no
    matter of these tests; what lowhaio leaves behind fails them."""
    if test is None:
        return functools.partial(check, kinds=kinds, libraries=libraries)

    @pytest.mark.parametrize('loop_name', tuple(kinds))
    @pytest.mark.parametrize('kit', [kit for name in libraries for kit in KITS[name]], ids=repr)
    @functools.wraps(test)
    def wrapper(kit, loop_name, **kwargs):
        if kit.is_ours:
            with nothing_left() as errors:
                run_on(kinds[loop_name], loop_name, errors, test, kit, **kwargs)
                # The library reads a response by generators of its own. One that a test leaves is
                # closed by the loop, in a task.
                errors[:] = [error for error in errors if 'async_generator' not in str(error)]
        else:
            with leniently(), row(loop_name):
                with asyncio.Runner(loop_factory=kinds[loop_name]) as runner:
                    runner.run(patiently(test, kit, **kwargs))

    signature = inspect.signature(test)
    wrapper.__signature__ = signature.replace(parameters=[
        *signature.parameters.values(),
        inspect.Parameter('loop_name', inspect.Parameter.KEYWORD_ONLY)])
    return wrapper


# Time passes only in `passing`: see the harness.
on_clock = functools.partial(check, kinds=CLOCKED)
for_httpx2 = functools.partial(check, libraries=['httpx2'])
for_httpx = functools.partial(check, libraries=['httpx'])


async def patiently(test, *args, **kwargs):
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    async with patience():
        await test(*args, **kwargs)


@contextlib.contextmanager
def leniently():
    """Ignore what complains of what it finds when it collects garbage."""
    gc.freeze()
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter('ignore')
        patch.setattr(sys, 'unraisablehook', lambda unraisable: None)
        yield
        gc.collect()


async def raised(awaitable):
    """The exception, of whatever class, that it raises."""
    try:
        await awaitable
    except Exception as error:
        return error
    raise AssertionError('it did not raise')


async def times_out(kit, name, seconds, awaitable, has_begun=lambda: True):
    """Await what has to fail after so many seconds, and not before."""
    task = asyncio.ensure_future(awaitable)
    await settling()
    await until(has_begun)
    await passing(seconds - 0.01)
    assert not task.done()
    await passing(0.02)
    await until(task.done)
    error = await kit.failure(name, task)
    assert isinstance(error, kit.http.TimeoutException)
    assert bool(str(error)) is kit.differs('messages', stock=False, ours=True)
    return error


async def cancelled(task):
    """Cancel a task, which must end in that, and not in an error."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def consume(response):
    """All pieces of a body, as they come."""
    return [piece async for piece in response.aiter_raw()]


def fields(head):
    """The names and values of a head that was sent, in their order."""
    return [tuple(line.split(b': ', 1)) for line in head.split(b'\r\n')[1:-2]]


def target(head):
    return head.split(b' ')[1]


def closing(*pieces):
    """A script that answers each connection's first request with these bytes, and closes."""
    async def script(peer):
        script.heads.append(await peer.read_head())
        await peer.send(*pieces)

    script.heads = []
    return script


def resetting(*pieces):
    """As `closing`, but the connection is reset."""
    async def script(peer):
        await peer.read_head()
        await peer.send(*pieces)
        await turns(20)
        peer.reset()

    return script


# ------------------------------------------------------------------------------ the request's head


@check
async def test_the_head_is_what_the_request_has(kit):
    async with kit.talking() as (client, server, script):
        answer = await client.get(server.url + 'a/b?c=d')
        assert (answer.status_code, answer.text) == (200, 'ok')
        [sent] = script.heads
        assert sent.startswith(b'GET /a/b?c=d HTTP/1.1\r\n')
        assert fields(sent) == answer.request.headers.raw
        assert value(sent, b'host') == b'127.0.0.1:%d' % server.port


@check
async def test_fields_are_sent_in_their_order_with_their_case_and_repeats(kit):
    given = [(b'Host', b'other.test'), (b'X-One', b'1'), (b'x-two', b'2'), (b'X-ONE', b'3'),
             (b'Accept', b'a'), (b'X-One', b'4')]
    async with kit.talking() as (client, server, script):
        request = kit.http.Request('GET', server.url, headers=given)
        await client.send(request)
        assert fields(script.heads[0]) == request.headers.raw == given


@check
async def test_the_place_of_the_field_host(kit):
    given = [(b'x-one', b'1'), (b'Host', b'other.test'), (b'x-two', b'2')]
    async with kit.talking() as (client, server, script):
        await client.send(kit.http.Request('GET', server.url, headers=given))
        assert fields(script.heads[0]) == kit.differs(
            'host', stock=[given[1], given[0], given[2]], ours=given)


@check
async def test_values_are_sent_as_the_bytes_that_they_are(kit):
    given = [(b'x-utf-8', 'caf\xe9'.encode()), (b'x-latin', b'caf\xe9'), (b'x-empty', b''),
             (b'x-tab', b'a\tb'), (b'x-quoted', b'"a, b"; c=\\"')]
    async with kit.talking() as (client, server, script):
        await client.get(server.url, headers=given)
        sent = script.heads[0]
        assert [values_of(sent, name) for name, _ in given] == [[value] for _, value in given]


@check
async def test_methods_are_sent_as_they_are(kit):
    names = ['GET', 'DELETE', 'PROPFIND', 'M-SEARCH', 'QUERY']
    async with kit.talking() as (client, server, script):
        for name in names:
            await client.request(name, server.url)
        assert script.lines == [f'{name} /' for name in names]


@check
async def test_urls_are_sent_as_the_library_quotes_them(kit):
    rows = ['', '?', '?a', '?a=b', 'a%20b', 'a b', 'caf\xe9?q=\xe9', '[x]|{y}', '?q=[a]|{b}^`"',
            '%zz', '100%', '/double//slash', '%2e%2e/x', "!$&'()*+,;=:@", '?a=1&a=2&b[]=3#x',
            'a%2Fb%2fc', '?q=%C3%A9+%20', '~-._', '\\x', '?x=<y>']
    async with kit.talking() as (client, server, script):
        for text in rows:
            with row(text):
                request = client.build_request('GET', server.url + text)
                await client.send(request)
                assert target(script.heads[-1]) == request.url.raw_path


@check
async def test_a_fragment_is_not_sent(kit):
    async with kit.talking() as (client, server, script):
        await client.get(server.url + 'a?b#c')
        assert target(script.heads[0]) == b'/a?b'
        assert b'#' not in script.heads[0]


@check
async def test_userinfo_becomes_a_field_and_is_not_in_the_target(kit):
    async with kit.talking() as (client, server, script):
        await client.get(server.url.replace('//', '//user:p%40ss@') + 'a')
        [sent] = script.heads
        assert target(sent) == b'/a'
        assert value(sent, b'authorization') == b'Basic ' + base64.b64encode(b'user:p@ss')
        assert value(sent, b'host') == b'127.0.0.1:%d' % server.port


TARGETS = [b'*', b'/[raw]|{x}^`"', b'http://other.test/a?b', b'/%zz', b'a:1', b'//x', b'/?#x']


@check
async def test_the_target_of_the_extension_is_sent_as_given(kit):
    async with kit.talking() as (client, server, script):
        for given in TARGETS:
            with row(given):
                await client.request('OPTIONS', server.url + 'not/this',
                                     extensions={'target': given})
                assert script.heads[-1].startswith(b'OPTIONS ' + given + b' HTTP/1.1\r\n')
        assert set(script.connections) == {0}


@check
async def test_a_target_that_would_break_the_request_line_is_refused(kit):
    async with kit.talking() as (client, server, script):
        for given in b'/a b', b'/a\r\nx: y', b'/\0', b'':
            with row(given):
                await kit.failure('LocalProtocolError', client.get(
                    server.url, extensions={'target': given}))
        assert script.heads == []
        assert (await client.get(server.url)).text == 'ok'


@check
async def test_a_target_may_be_text(kit):
    async with kit.talking() as (client, server, script):
        await client.get(server.url, extensions={'target': '/[a]|{b}'})
        assert target(script.heads[0]) == b'/[a]|{b}'


@check
async def test_a_target_of_other_bytes_than_ascii(kit):
    async with kit.talking() as (client, server, script):
        asked = client.get(server.url, extensions={'target': b'/caf\xc3\xa9'})
        if kit.differs('target', stock=False, ours=True):
            await asked
            assert target(script.heads[0]) == b'/caf\xc3\xa9'
        else:
            await kit.failure('LocalProtocolError', asked)
            assert script.heads == []


@check
async def test_what_breaks_a_head_is_refused_before_anything_is_sent(kit):
    async with kit.talking() as (client, server, script):
        for method, given in [
            ('GE T', []), ('G\x00T', []), ('', []),
            ('GET', [(b'x y', b'z')]), ('GET', [(b'', b'z')]), ('GET', [(b'x:', b'z')]),
            ('GET', [(b'x', b'a\r\nb: c')]), ('GET', [(b'x', b'a\0')]), ('GET', [(b'x', b'\n')]),
        ]:
            with row((method, given)):
                await kit.failure(
                    'LocalProtocolError', client.request(method, server.url, headers=given))
        assert script.heads == []
        assert (await client.get(server.url)).text == 'ok'
        assert len(server.peers) == kit.differs('refused', stock=10, ours=1)


@check
async def test_the_method_connect(kit):
    async with kit.talking(b'HTTP/1.1 200 OK\r\n\r\n') as (client, server, script):
        asked = client.request('CONNECT', server.url, extensions={'target': b'other.test:443'})
        if kit.differs('connect', stock=False, ours=True):
            await kit.failure('LocalProtocolError', asked)
        else:
            await asked
            assert script.lines == ['CONNECT other.test:443']


# ------------------------------------------------------------------------------ the request's body


@check
async def test_a_body_of_bytes_has_its_length(kit):
    async with kit.talking() as (client, server, script):
        await client.post(server.url, content=b'hello')
        await client.put(server.url, content='h\xe9llo')
        await client.post(server.url)
        await client.request('GET', server.url, content=b'x')
        assert script.bodies == [b'hello', 'h\xe9llo'.encode(), b'', b'x']
        assert [value(sent, b'content-length') for sent in script.heads] == [
            b'5', b'6', b'0', b'1']
        assert [value(sent, b'transfer-encoding') for sent in script.heads] == [None] * 4
        assert script.connections == [0] * 4


@check
async def test_a_generator_is_sent_in_chunks(kit):
    async def generate():
        yield b'hello'
        yield b''
        await asyncio.sleep(0)
        yield b'x' * 26

    async with kit.talking() as (client, server, script):
        await client.post(server.url, content=generate())
        [sent] = script.heads
        assert value(sent, b'transfer-encoding') == b'chunked'
        assert value(sent, b'content-length') is None
        assert script.bodies[0].lower() == b'5\r\nhello\r\n1a\r\n' + b'x' * 26 + b'\r\n0\r\n\r\n'


@check
async def test_bytes_are_sent_in_chunks_if_the_caller_says_so(kit):
    async with kit.talking() as (client, server, script):
        for content in b'hello', b'':
            await client.post(
                server.url, content=content, headers={'Transfer-Encoding': 'chunked'})
        assert script.bodies == [b'5\r\nhello\r\n0\r\n\r\n', b'0\r\n\r\n']
        if kit.is_ours or kit.library == 'httpx2':  # classic httpx adds it, as in the next check
            assert [value(sent, b'content-length') for sent in script.heads] == [None, None]


@check
async def test_a_length_beside_a_coding(kit):
    given = [(b'Host', b'name.test'), (b'Content-Length', b'5'),
             (b'Transfer-Encoding', b'chunked')]
    async with kit.talking() as (client, server, script):
        await client.send(kit.http.Request('POST', server.url, headers=given, content=b'hello'))
        assert fields(script.heads[0]) == kit.differs(
            'length-and-coding', stock=given, ours=[given[0], given[2]])
        assert script.bodies == [b'5\r\nhello\r\n0\r\n\r\n']


@check
async def test_other_codings_are_refused(kit):
    async with kit.talking() as (client, server, script):
        for coding in 'identity', 'gzip', 'chunked, chunked', 'chunked, gzip':
            with row(coding):
                await kit.failure('LocalProtocolError', client.post(
                    server.url, content=b'hello', headers={'transfer-encoding': coding}))
        assert script.heads == []


@check
async def test_another_coding_before_chunked(kit):
    async def script(peer):
        await peer.read_head()
        script.received = [await peer.read_chunked()]
        await peer.send(OK)

    async with kit.talking(script) as (client, server, _):
        asked = client.post(server.url, content=b'hello', headers={
            'transfer-encoding': 'gzip, chunked'})
        if kit.differs('coding', stock=False, ours=True):
            await asked
            assert script.received == [b'5\r\nhello\r\n0\r\n\r\n']
        else:
            await kit.failure('LocalProtocolError', asked)


@check
async def test_a_body_of_a_class_of_the_caller(kit):
    class Own(kit.http.AsyncByteStream):
        async def __aiter__(self):
            yield b'hello'
            yield b' world'

    class Iterable:
        def __aiter__(self):
            return aiter(Own())

    async with kit.talking() as (client, server, script):
        await client.send(kit.http.Request(
            'POST', server.url, stream=Own(), headers={
                'host': 'name.test', 'content-length': '11'}))
        await client.post(server.url, content=Iterable())
        assert script.bodies == [
            b'hello world', b'5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n']


@check
async def test_a_response_below_300_that_comes_while_the_body_is_sent(kit):
    async def script(peer):
        sent = await peer.read_head()
        await peer.send(head(b'content-length: 4'))
        script.body = await peer.read_body(sent)
        await peer.send(b'done')

    async with kit.talking(script) as (client, server, _):
        answer = await client.post(server.url, content=LARGE * 4)
        assert answer.text == 'done'
        assert script.body == LARGE * 4


@check
async def test_a_generator_that_yields_nothing_is_an_empty_coded_body(kit):
    async def generate():
        return
        yield

    async with kit.talking() as (client, server, script):
        for _ in range(2):
            await client.post(server.url, content=generate())
        assert script.bodies == [b'0\r\n\r\n'] * 2
        assert [value(sent, b'transfer-encoding') for sent in script.heads] == [b'chunked'] * 2
        assert [value(sent, b'content-length') for sent in script.heads] == [None] * 2
        assert script.connections == [0, 0]


@check
async def test_a_generator_with_its_length_is_sent_plainly(kit):
    async def generate():
        yield b'hello'
        yield b' world'

    async with kit.talking() as (client, server, script):
        await client.post(server.url, content=generate(), headers={'Content-Length': '11'})
        assert script.bodies == [b'hello world']
        assert value(script.heads[0], b'transfer-encoding') is None


@check
async def test_an_exception_of_the_generator_comes_out_as_it_is(kit):
    class Own(Exception):
        pass

    own = Own('mine')

    async def generate():
        yield b'hello'
        raise own

    async def script(peer):
        await peer.read_head()
        if peer.index == 0:
            script.sent = await peer.closed()
        else:
            await peer.send(OK)

    async with kit.talking(script) as (client, server, script):
        with pytest.raises(Own) as caught:
            await client.post(server.url, content=generate())
        assert caught.value is own
        assert (await client.get(server.url)).text == 'ok'
        # The server must not take it for a whole body.
        await until(lambda: hasattr(script, 'sent'))
        assert script.sent in {b'', b'5\r\nhello\r\n'}


@check
async def test_an_exception_of_the_generator_is_not_taken_for_one_of_the_network(kit):
    async def generate(exception):
        raise exception
        yield

    async with kit.talking(holding()) as (client, server, script):
        for exception in OSError('disk'), TimeoutError('mine'), ssl.SSLError(1, 'own'):
            error = await raised(client.post(server.url, content=generate(exception)))
            assert error is exception


@pytest.mark.parametrize('length', [3, 9], ids=['too long', 'too short'])
@check
async def test_a_body_of_another_length_than_declared(kit, length):
    async def generate():
        yield b'hello'
        yield b'!'

    async with kit.talking() as (client, server, script):
        error = await raised(client.post(
            server.url, content=generate(), headers={'content-length': str(length)}))
        assert type(error) is kit.differs(
            'length', stock=h11.LocalProtocolError, ours=kit.http.LocalProtocolError)
        assert (await client.get(server.url)).text == 'ok'
        assert (script.lines[-1], script.connections[-1]) == ('GET /', 1)


@check
async def test_files_are_sent_as_multipart(kit, tmp_path):
    path = tmp_path / 'file.bin'
    path.write_bytes(LARGE)
    async with kit.talking() as (client, server, script):
        with path.open('rb') as file:
            await client.post(
                server.url, data={'name': 'value'},
                files={'a': file, 'b': ('b.txt', io.BytesIO(b'hello'), 'text/plain')})
        [sent] = script.heads
        [body] = script.bodies
        boundary = value(sent, b'content-type').partition(b'boundary=')[2]
        parts = body.split(b'--' + boundary)
        assert (parts[0], parts[-1]) == (b'', b'--\r\n')
        assert [part.partition(b'\r\n\r\n')[2][:-2] for part in parts[1:-1]] == [
            b'value', LARGE, b'hello']
        assert int(value(sent, b'content-length')) == len(body)


@check
async def test_forms_and_json(kit):
    async with kit.talking() as (client, server, script):
        await client.post(server.url, data={'a': ['1', '2'], 'b': '&'})
        await client.post(server.url, json={'a': [1, None]})
        assert script.bodies[0] == b'a=1&a=2&b=%26'
        assert json.loads(script.bodies[1]) == {'a': [1, None]}
        assert [value(sent, b'content-type') for sent in script.heads] == [
            b'application/x-www-form-urlencoded', b'application/json']


@check
async def test_a_long_body_arrives_as_it_is(kit):
    data = hashlib.shake_128(b'seed').digest(2_000_000)

    async def generate():
        for start in range(0, len(data), 70_000):
            yield data[start:start + 70_000]

    async with kit.talking() as (client, server, script):
        await client.post(server.url, content=data)
        await client.post(server.url, content=generate())
        assert script.bodies[0] == data
        pieces = io.BytesIO(script.bodies[1])
        decoded = b''
        while size := int(pieces.readline(), 16):
            decoded += pieces.read(size)
            assert pieces.read(2) == b'\r\n'
        assert decoded == data


@check
async def test_a_request_can_be_sent_again(kit):
    async with kit.talking() as (client, server, script):
        request = client.build_request('POST', server.url, content=b'hello')
        for _ in range(3):
            await client.send(request)
        assert script.bodies == [b'hello'] * 3


@check
async def test_a_generator_is_closed_when_the_request_fails(kit):
    events = []

    async def generate():
        try:
            while True:
                yield bytes(100_000)
        except GeneratorExit:
            events.append('closed')
            raise
        finally:
            events.append('cleaned up')

    async with kit.talking(resetting()) as (client, server, _):
        with pytest.raises((kit.http.ReadError, kit.http.WriteError)):
            await client.post(server.url, content=generate())
        # Classic httpx wraps it in one of its own, and leaves it to whoever collects garbage.
        if kit.library == 'httpx2':
            assert events == ['closed', 'cleaned up']


@check
async def test_a_refusal_of_a_body_that_closes_the_connection_is_returned(kit):
    async def script(peer):
        await peer.read_head()
        await peer.send(response(413, b'too much', b'connection: close'))

    async with kit.talking(script) as (client, server, _):
        answer = await client.post(server.url, content=b'x' * 20_000)
        assert (answer.status_code, answer.text) == (413, 'too much')


@on_clock
async def test_a_refusal_of_a_body_by_a_server_that_reads_no_more(kit):
    events = []

    async def generate():
        try:
            while True:
                yield bytes(1_000_000)
        finally:
            events.append('cleaned up')

    async def script(peer):
        await peer.read_head()
        peer.writer.transport.pause_reading()
        await peer.send(response(413, b'too much'))
        await forever()

    async with kit.talking(script) as (client, server, _):
        asked = client.post(server.url, content=generate(), timeout=kit.timeout(write=1))
        if kit.differs('early-response', stock=False, ours=True):
            answer = await asked
            assert (answer.status_code, answer.text) == (413, 'too much')
            assert events == (['cleaned up'] if kit.library == 'httpx2' else [])  # see above
        else:
            # It suppresses what it met while writing, but not this.
            await times_out(kit, 'WriteTimeout', 1, asked, lambda: server.peers)


@on_clock
async def test_a_request_that_expects_a_100(kit):
    async def script(peer):
        await peer.read_head()
        script.read = asyncio.ensure_future(peer.read(5))
        await settling()
        script.came_at_once = script.read.done()
        await peer.send(CONTINUE)
        await script.read
        await peer.send(OK)

    async with kit.talking(script) as (client, server, _):
        await client.post(server.url, content=b'hello', headers={'expect': '100-continue'})
        assert script.came_at_once is kit.differs('expect', stock=True, ours=False)


# ------------------------------------------------------------------------------------ the response


@check
async def test_fields_come_in_their_order_with_their_repeats(kit):
    lines = [b'X-One: 1', b'Set-Cookie: a=b', b'x-two:2', b'X-ONE: 3', b'Set-Cookie: c=d',
             b'X-Latin: caf\xe9', b'X-Empty:']
    async with kit.talking(response(200, b'ok', *lines)) as (client, server, _):
        answer = await client.get(server.url)
        given = [(b'X-One', b'1'), (b'Set-Cookie', b'a=b'), (b'x-two', b'2'), (b'X-ONE', b'3'),
                 (b'Set-Cookie', b'c=d'), (b'X-Latin', b'caf\xe9'), (b'X-Empty', b''),
                 (b'content-length', b'2')]
        assert answer.headers.raw == kit.differs(
            'field-names', stock=given, ours=[(name.lower(), value) for name, value in given])
        assert answer.headers.get_list('x-one') == ['1', '3']
        assert answer.headers['X-oNe'] == '1, 3'


STATUS_LINES = [
    (b'HTTP/1.1 200 OK', 'HTTP/1.1', 200, 'OK'),
    (b'HTTP/1.1 201 ', 'HTTP/1.1', 201, ''),
    (b'HTTP/1.1 418 I am a teapot: really', 'HTTP/1.1', 418, 'I am a teapot: really'),
    (b'HTTP/1.1 599 Whatever', 'HTTP/1.1', 599, 'Whatever'),
    (b'HTTP/1.0 404 Not Found', 'HTTP/1.0', 404, 'Not Found'),
]


@check
async def test_the_status_line_is_in_the_extensions(kit):
    wires = [head(b'content-length: 2', start=line) + b'ok' for line, *_ in STATUS_LINES]
    async with kit.talking(*wires) as (client, server, _):
        for line, version, code, reason in STATUS_LINES:
            with row(line):
                answer = await client.get(server.url)
                assert (answer.http_version, answer.status_code, answer.reason_phrase) == (
                    version, code, reason)
                assert answer.extensions['http_version'] == version.encode()
                assert answer.extensions['reason_phrase'] == reason.encode()


BODIES = {
    'length': head(b'content-length: 11') + b'hello world',
    'chunks': chunked(b'5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n'),
    'one chunk in capitals': chunked(b'B\r\nhello world\r\n0\r\n\r\n'),
    'extensions and trailers': chunked(b'5;a=b\r\nhello\r\n06;x\r\n world\r\n0\r\nA: b\r\n\r\n'),
    'after interim responses': CONTINUE + HINTS + head(b'content-length: 11') + b'hello world',
    'bare line feeds': b'HTTP/1.1 200 OK\ncontent-length: 11\n\nhello world',
    'to the end': b'HTTP/1.1 200 OK\r\n\r\nhello world',
    'to the end of 1.0': b'HTTP/1.0 200 OK\r\n\r\nhello world',
}


@pytest.mark.parametrize('cut', [lambda wire: [wire], cut_into_bytes], ids=['whole', 'bytes'])
@check
async def test_a_body_of_each_framing(kit, cut):
    async with kit.talking(None) as (client, server, _):
        for name, wire in BODIES.items():
            with row(name):
                server.script = closing(*cut(wire))
                answer = await client.get(server.url, headers={'connection': 'close'})
                assert (answer.status_code, answer.content) == (200, b'hello world')
                assert answer.num_bytes_downloaded == 11
                assert answer.is_closed


@check
async def test_a_field_of_several_lines(kit):
    async with kit.talking(response(200, b'ok', b'a: b', b'\t c', b'd: e')) as (client, server, _):
        answer = await client.get(server.url)
        assert (answer.headers['a'], answer.headers['d']) == ('b c', 'e')


@check
async def test_what_is_closed_is_closed_again(kit):
    async with kit.talking() as (client, server, script):
        answer = await client.get(server.url)
        for _ in range(2):
            await answer.aclose()
        async with client.stream('GET', server.url) as answer:
            for _ in range(2):
                await answer.aclose()
            with pytest.raises(kit.http.StreamClosed):
                await answer.aread()


@pytest.mark.parametrize('method, wire', [
    ('HEAD', head(b'content-length: 1000')),
    ('HEAD', head(b'transfer-encoding: chunked')),
    ('GET', head(start=b'HTTP/1.1 204 No Content')),
    ('GET', head(b'content-length: 1000', b'etag: "x"', start=b'HTTP/1.1 304 Not Modified')),
])
@check
async def test_what_has_no_body_leaves_the_connection_to_the_next(kit, method, wire):
    async with kit.talking(wire, OK) as (client, server, script):
        answer = await client.request(method, server.url)
        assert answer.content == b''
        assert (await client.get(server.url)).text == 'ok'
        assert script.connections == [0, 0]


@check
async def test_a_body_comes_as_it_arrives(kit):
    goes_on = asyncio.Event()

    async def script(peer):
        await peer.read_head()
        await peer.send(chunked(b'5\r\nfirst\r\n'))
        await goes_on.wait()
        await peer.send(b'6\r\nsecond\r\n0\r\n\r\n')

    async with kit.talking(script) as (client, server, _):
        async with client.stream('GET', server.url) as answer:
            assert not answer.is_closed
            pieces = answer.aiter_raw()
            assert await anext(pieces) == b'first'
            goes_on.set()
            assert [piece async for piece in pieces] == [b'second']
            assert (answer.is_closed, answer.is_stream_consumed) == (True, True)


@check
async def test_coded_content_is_raw_and_the_library_decodes_it(kit):
    data = gzip.compress(b'hello' * 1000, mtime=0)
    async with kit.talking(response(200, data, b'content-encoding: gzip')) as (client, server, _):
        answer = await client.get(server.url)
        assert (answer.content, answer.num_bytes_downloaded) == (b'hello' * 1000, len(data))
        async with client.stream('GET', server.url) as answer:
            assert b''.join(await consume(answer)) == data
        async with client.stream('GET', server.url) as answer:
            assert b''.join([piece async for piece in answer.aiter_bytes()]) == b'hello' * 1000


@check
async def test_lines_and_text_of_a_stream(kit):
    wire = chunked(b'7\r\none\ntwo\r\n9\r\n\r\nthree\n\xc3\r\n1\r\n\xa9\r\n0\r\n\r\n',
                   b'content-type: text/plain; charset=utf-8')
    async with kit.talking(wire) as (client, server, script):
        async with client.stream('GET', server.url) as answer:
            assert [line async for line in answer.aiter_lines()] == [
                'one', 'two', 'three', '\xe9']
        async with client.stream('GET', server.url) as answer:
            assert ''.join([text async for text in answer.aiter_text()]) == (
                'one\ntwo\r\nthree\n\xe9')
        async with client.stream('GET', server.url) as answer:
            assert (await answer.aread()).decode() == 'one\ntwo\r\nthree\n\xe9'
        assert script.connections == [0, 0, 0]


@check
async def test_a_head_of_almost_100_kib(kit):
    one = b'x-one: ' + b'a' * 99_000
    many = [b'x-%d: %s' % (number, b'a' * 900) for number in range(100)]
    async with kit.talking(
            response(200, b'ok', one), response(200, b'ok', *many)) as (client, server, script):
        assert len((await client.get(server.url)).headers['x-one']) == 99_000
        assert len((await client.get(server.url)).headers) == 101
        assert script.connections == [0, 0]


@check
async def test_a_head_of_more_than_that_is_refused(kit):
    async with kit.talking(
            response(200, b'ok', b'x-one: ' + b'a' * 300_000), OK) as (client, server, script):
        await kit.failure('RemoteProtocolError', client.get(server.url))
        assert (await client.get(server.url)).text == 'ok'
        assert script.connections == [0, 1]


@pytest.mark.parametrize('scheme', ['http', 'https'])
@check
async def test_the_network_stream_tells_of_the_connection(kit, scheme):
    context = server_context() if scheme == 'https' else None
    async with kit.talking(context=context) as (client, server, _):
        answer = await client.get(server.url)
        stream = answer.extensions['network_stream']
        async with client.stream('GET', server.url) as answer:
            stream = answer.extensions['network_stream']
            assert stream.get_extra_info('server_addr') == ('127.0.0.1', server.port)
            assert stream.get_extra_info('client_addr') == (
                server.peers[0].writer.get_extra_info('peername'))
            assert stream.get_extra_info('no such thing') is None
            tls = stream.get_extra_info('ssl_object')
            if scheme == 'http':
                assert tls is None
            else:
                assert tls.version() == 'TLSv1.3'
                assert tls.cipher()[1] == 'TLSv1.3'
                certificate = tls.getpeercert(binary_form=True)
                assert certificate.startswith(b'0\x82')
                assert isinstance(tls, ssl.SSLObject) is kit.differs(
                    'ssl_object', stock=True, ours=False)
            assert (stream.get_extra_info('socket') is None) is kit.differs(
                'socket', stock=False, ours=True)


# -------------------------------------------------------------------------- connections and limits


@check
async def test_requests_one_after_the_other_share_a_connection(kit):
    async with kit.talking(OK, chunked(b'2\r\nok\r\n0\r\n\r\n'), OK) as (client, server, script):
        for _ in range(5):
            assert (await client.get(server.url)).text == 'ok'
        assert script.connections == [0] * 5


@pytest.mark.parametrize('wire', [
    response(200, b'ok', b'Connection: close'), response(200, b'ok', b'connection: x, Close'),
    head(b'content-length: 2', start=b'HTTP/1.0 200 OK') + b'ok',
], ids=['close', 'among others', 'HTTP/1.0'])
@check
async def test_a_connection_that_the_response_closes_is_not_used_again(kit, wire):
    async with kit.talking(wire, OK) as (client, server, script):
        for _ in range(3):
            assert (await client.get(server.url)).text == 'ok'
        assert script.connections == [0, 1, 1]


@check
async def test_a_connection_of_1_0_that_is_kept(kit):
    wire = head(b'content-length: 2', b'connection: keep-alive', start=b'HTTP/1.0 200 OK') + b'ok'
    async with kit.talking(wire) as (client, server, script):
        for _ in range(2):
            await client.get(server.url)
        assert script.connections == kit.differs('http10', stock=[0, 1], ours=[0, 0])


@check
async def test_a_time_for_which_the_server_keeps_a_connection(kit):
    async with kit.talking(response(200, b'ok', b'keep-alive: timeout=1')) as (
            client, server, script):
        for _ in range(2):
            await client.get(server.url)
        assert script.connections == kit.differs('keep-alive', stock=[0, 0], ours=[0, 1])


@check
async def test_a_connection_that_the_request_closes_is_not_used_again(kit):
    async with kit.talking() as (client, server, script):
        for _ in range(2):
            await client.get(server.url, headers={'connection': 'close'})
        assert script.connections == [0, 1]


@pytest.mark.parametrize('method', ['GET', 'POST'])
@check
async def test_a_connection_that_was_hung_up_is_noticed_before_the_next_request(kit, method):
    async def script(peer):
        script.heads.append(await peer.read_head())
        await peer.read_body(script.heads[-1])
        await peer.send(OK)
        if peer.index == 0:
            await peer.close()
        script.after.append(await peer.closed())

    script.heads = []
    script.after = []
    async with kit.talking(script) as (client, server, _):
        await client.get(server.url)
        await until(lambda: server.peers[0].writer.transport.is_closing())
        await turns(20)
        answer = await client.request(method, server.url, content=b'an order')
        assert answer.text == 'ok'
        assert [sent.partition(b' ')[0].decode() for sent in script.heads] == ['GET', method]
        assert script.after == [b'']


@check
async def test_a_request_over_a_kept_connection_that_gets_no_answer_is_not_sent_again(kit):
    async with kit.talking(OK, None) as (client, server, script):
        await client.get(server.url)
        await kit.failure('RemoteProtocolError', client.post(server.url, content=b'an order'))
        assert script.lines == ['GET /', 'POST /']
        assert script.connections == [0, 0]


@check
async def test_a_small_body_that_nobody_reads(kit):
    async with kit.talking(response(200, b'0123456789'), OK) as (client, server, script):
        async with client.stream('GET', server.url) as answer:
            assert answer.status_code == 200
        assert (await client.get(server.url)).text == 'ok'
        assert script.connections == kit.differs('early-break', stock=[0, 1], ours=[0, 0])


@check
async def test_a_stream_that_is_left_when_the_rest_is_there(kit):
    lines = b'data: %d\n\n'
    events = b''.join(b'9\r\n' + lines % number + b'\r\n' for number in range(5))
    async with kit.talking(chunked(events + b'0\r\n\r\n'), OK) as (client, server, script):
        async with client.stream('GET', server.url) as answer:
            async for line in answer.aiter_lines():
                assert line == 'data: 0'
                break
        assert answer.is_closed
        assert (await client.get(server.url)).text == 'ok'
        assert script.connections == kit.differs('early-break', stock=[0, 1], ours=[0, 0])


@check
async def test_a_stream_that_is_left_before_its_end_closes_its_connection(kit):
    script = holding(chunked(b'5\r\nfirst\r\n'))
    async with kit.talking(script, limits={'max_connections': 1}) as (client, server, _):
        for number in range(1, 4):
            async with client.stream('GET', server.url) as answer:
                async for piece in answer.aiter_raw():
                    assert piece == b'first'
                    break
            await until(lambda number=number: script.closed == number)


@check
async def test_an_exception_in_the_block_of_a_stream_closes_it(kit):
    script = holding(chunked(b'5\r\nfirst\r\n'))
    async with kit.talking(script, limits={'max_connections': 1}) as (client, server, _):
        for number in range(1, 3):
            with pytest.raises(ZeroDivisionError):
                async with client.stream('GET', server.url) as answer:
                    async for _ in answer.aiter_bytes():
                        raise ZeroDivisionError
            await until(lambda number=number: script.closed == number)


@check
async def test_a_response_that_is_dropped_gives_its_place_back(kit):
    script = holding(chunked(b'5\r\nfirst\r\n'))
    async with kit.talking(script, limits={'max_connections': 1}) as (client, server, _):
        answer = await client.send(client.build_request('GET', server.url), stream=True)
        assert answer.status_code == 200
        del answer
        gc.collect()
        asked = client.send(client.build_request(
            'GET', server.url, timeout=kit.timeout(pool=kit.differs(
                'dropped', stock=0.01, ours=60))), stream=True)
        if kit.is_ours:
            await (await asked).aclose()
            await until(lambda: script.closed == 2)
        else:
            await kit.failure('PoolTimeout', asked)
            assert script.closed == 0


@check
async def test_a_response_that_has_arrived_whole_is_still_to_be_read(kit):
    async with kit.talking(limits={'max_connections': 1}) as (client, server, script):
        async with client.stream('GET', server.url) as unread:
            asked = client.get(server.url, timeout=kit.timeout(pool=kit.differs(
                'arrived', stock=0.01, ours=60)))
            if kit.is_ours:
                assert (await asked).content == b'ok'
            else:
                await kit.failure('PoolTimeout', asked)
            assert await unread.aread() == b'ok'
        assert len(server.peers) == 1


@check
async def test_a_hundred_requests_at_once(kit):
    waiting = asyncio.Barrier(100)

    async def script(peer):
        sent = await peer.read_head()
        await waiting.wait()  # so all of them have come
        await peer.send(response(200, target(sent)))

    async with kit.talking(script) as (client, server, _):
        answers = await asyncio.gather(*(client.get(f'{server.url}{n}') for n in range(100)))
        assert [answer.text for answer in answers] == [f'/{n}' for n in range(100)]
        assert len(server.peers) == 100


@check
async def test_a_hundred_requests_at_once_over_a_few_connections(kit):
    script = Answering(lambda sent, body: response(200, target(sent)))
    async with kit.talking(script, limits={'max_connections': 7}) as (client, server, _):
        answers = await asyncio.gather(*(client.get(f'{server.url}{n}') for n in range(100)))
        assert [answer.text for answer in answers] == [f'/{n}' for n in range(100)]
        assert len(server.peers) == 7


@check
async def test_who_waits_for_a_place_gets_it_in_turn(kit):
    async with kit.talking(limits={'max_connections': 1}) as (client, server, script):
        tasks = []
        for number in range(5):
            tasks.append(asyncio.ensure_future(client.get(f'{server.url}{number}')))
            await turns(5)
        await asyncio.gather(*tasks)
        # Classic httpx wakes several for one connection, and they run for it.
        in_turn = kit.is_ours or kit.library == 'httpx2'
        assert (script.lines if in_turn else sorted(script.lines)) == [
            f'GET /{number}' for number in range(5)]
        assert len(server.peers) == 1


@check
async def test_places_are_of_all_hosts(kit):
    async with kit.talking(limits={'max_connections': 1}) as (client, server, script):
        async with Server(Answering(OK)) as other:
            for _ in range(2):
                await client.get(server.url)
                await client.get(other.url)
            assert len(server.peers) == len(other.peers) == 2
            await until(lambda: server.peers[1].reader.at_eof())


async def at_once(client, server, number):
    """So many requests at the same time, each over a connection of its own."""
    together = asyncio.Barrier(number)

    async def script(peer):
        await peer.read_head()
        await together.wait()
        await Answering(OK)(Returned(peer))

    class Returned:
        """A peer whose first head has been read."""

        def __init__(self, peer):
            self.peer = peer
            self.is_first = True

        def __getattr__(self, name):
            return getattr(self.peer, name)

        async def read_head(self):
            if self.is_first:
                self.is_first = False
                return b'GET / HTTP/1.1\r\n\r\n'
            return await self.peer.read_head()

    server.script = script
    await asyncio.gather(*(client.get(server.url) for _ in range(number)))
    assert len(server.peers) == number


@pytest.mark.parametrize('kept', [0, 1, 3])
@check
async def test_so_many_connections_are_kept(kit, kept):
    async with kit.talking(limits={'max_keepalive_connections': kept}) as (client, server, _):
        await at_once(client, server, 5)
        await until(lambda: sum(peer.reader.at_eof() for peer in server.peers) >= 5 - kept)
        await turns(20)
        # Classic httpx counts those in use as kept ones, so it may close more of them.
        if kit.is_ours or kit.library == 'httpx2':
            assert sum(peer.reader.at_eof() for peer in server.peers) == 5 - kept


@check
async def test_a_kept_connection_expires(kit):
    async with kit.talking(limits={'keepalive_expiry': 0.01}) as (client, server, script):
        for _ in range(2):
            await client.get(server.url)
            await asyncio.sleep(0.05)
        assert script.connections == [0, 1]
        await until(lambda: server.peers[0].reader.at_eof())


@check
async def test_a_kept_connection_without_expiry_is_kept(kit):
    async with kit.talking(limits={'keepalive_expiry': None}) as (client, server, script):
        for _ in range(2):
            await client.get(server.url)
            await asyncio.sleep(0.02)
        assert script.connections == [0, 0]


@check
async def test_limits_of_a_client_with_a_transport_are_ignored(kit):
    limits = kit.http.Limits(max_connections=1, max_keepalive_connections=0)
    async with kit.talking(client={'limits': limits}) as (client, server, _):
        await at_once(client, server, 5)
        assert not any(peer.reader.at_eof() for peer in server.peers)


@check
async def test_the_end_of_a_client_closes_its_connections(kit):
    async with Server(Answering(OK)) as server:
        async with kit.client() as client:
            await at_once(client, server, 3)
        await until(lambda: all(peer.reader.at_eof() for peer in server.peers))


@check
async def test_a_transport_is_closed_twice_and_used_afterwards(kit):
    async with Server(Answering(OK)) as server:
        transport = kit.transport()
        for _ in range(2):
            async with kit.http.AsyncClient(transport=transport) as client:
                assert (await client.get(server.url)).text == 'ok'
            await transport.aclose()
        await until(lambda: all(peer.reader.at_eof() for peer in server.peers))
        assert len(server.peers) == 2


@check
async def test_a_transport_alone_is_a_context_manager(kit):
    async with Server(Answering(OK)) as server:
        async with kit.transport() as transport:
            for _ in range(2):
                request = kit.http.Request('GET', server.url)
                answer = await transport.handle_async_request(request)
                assert isinstance(answer, kit.http.Response)
                assert await answer.aread() == b'ok'
            assert len(server.peers) == 1
        await until(lambda: server.peers[0].reader.at_eof())


@check
async def test_a_transport_is_closed_while_a_response_is_read(kit):
    goes_on = asyncio.Event()

    async def script(peer):
        await peer.read_head()
        await peer.send(chunked(b'5\r\nfirst\r\n'))
        await goes_on.wait()
        await peer.send(b'6\r\nsecond\r\n0\r\n\r\n')
        await peer.closed()
        script.is_over = True

    script.is_over = False
    async with Server(script) as server:
        transport = kit.transport()
        client = kit.http.AsyncClient(transport=transport)
        answer = await client.send(client.build_request('GET', server.url), stream=True)
        pieces = answer.aiter_raw()
        assert await anext(pieces) == b'first'
        await transport.aclose()
        goes_on.set()
        if kit.differs('aclose', stock=False, ours=True):
            assert [piece async for piece in pieces] == [b'second']
        else:
            await kit.failure('ReadError', anext(pieces))
        await until(lambda: script.is_over)
        await client.aclose()


# ------------------------------------------------------------------------------------ cancellation


@check
async def test_a_cancellation_while_the_head_is_awaited(kit):
    script = holding()
    async with kit.talking(script, limits={'max_connections': 1}) as (client, server, _):
        for number in range(1, 4):
            task = asyncio.ensure_future(client.get(server.url, timeout=None))
            await until(lambda number=number: script.sent == number)
            await cancelled(task)
            await until(lambda number=number: script.closed == number)


@check
async def test_a_cancellation_while_the_body_is_awaited(kit):
    script = holding(UNFINISHED)
    async with kit.talking(script, limits={'max_connections': 1}) as (client, server, _):
        for number in range(1, 4):
            task = asyncio.ensure_future(client.get(server.url, timeout=None))
            await until(lambda number=number: script.sent == number)
            await turns(20)
            await cancelled(task)
            await until(lambda number=number: script.closed == number)


@check
async def test_a_cancellation_while_the_body_is_sent(kit):
    with deaf_server() as server:
        async with kit.client(limits={'max_connections': 1}) as client:
            for _ in range(2):
                task = asyncio.ensure_future(
                    client.post(server.url, content=BLOCKING, timeout=None))
                await turns(50)
                await cancelled(task)
                sent = await server.all_sent()
                assert sent.startswith(b'POST /')
                assert len(sent) < len(BLOCKING)


@check
async def test_a_cancellation_in_the_generator(kit):
    waits = asyncio.Event()
    ends = []

    async def generate():
        try:
            yield b'hello'
            waits.set()
            await forever()
        except asyncio.CancelledError:
            ends.append('cancelled')
            raise

    async with kit.talking(holding()) as (client, server, _):
        task = asyncio.ensure_future(client.post(server.url, content=generate()))
        await waits.wait()
        await cancelled(task)
        assert ends == ['cancelled']
        await until(lambda: server.peers and server.peers[0].reader.at_eof())


@check
async def test_a_cancellation_while_connecting(kit):
    [sock] = bound_to('127.0.0.1')
    with sock, full_backlog(sock) as port:
        async with kit.client(limits={'max_connections': 1}) as client:
            for _ in range(3):
                task = asyncio.ensure_future(client.get(f'http://127.0.0.1:{port}/', timeout=None))
                await turns(20)
                await cancelled(task)


@pytest.mark.usefixtures('only_full_collections')
@check
async def test_a_cancellation_in_the_handshake(kit):
    async def script(peer):
        await peer.read(5)
        script.begun += 1
        await peer.closed()
        script.closed += 1

    script.begun = script.closed = 0
    async with kit.talking(script, limits={'max_connections': 1}) as (client, server, _):
        for number in range(1, 4):
            task = asyncio.ensure_future(
                client.get(f'https://127.0.0.1:{server.port}/', timeout=None))
            await until(lambda number=number: script.begun == number)
            await cancelled(task)
            if kit.differs('handshake-cancelled', stock=False, ours=True):
                await until(lambda number=number: script.closed == number)
        # uvloop closes what is not referred to any more.
        if isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop):
            await turns(50)
            assert script.closed == kit.differs('handshake-cancelled', stock=0, ours=3)


@check
async def test_a_cancellation_while_waiting_for_a_place(kit):
    goes_on = asyncio.Event()

    async def script(peer):
        while True:
            sent = await peer.read_head()
            script.targets.append(target(sent))
            await goes_on.wait()
            await peer.send(OK)

    script.targets = []
    async with kit.talking(script, limits={'max_connections': 1}) as (client, server, _):
        tasks = []
        for number in range(4):
            tasks.append(asyncio.ensure_future(client.get(f'{server.url}{number}')))
            await turns(10)
        await cancelled(tasks[1])
        await cancelled(tasks[2])
        goes_on.set()
        assert [(await tasks[number]).text for number in (0, 3)] == ['ok', 'ok']
        assert script.targets == [b'/0', b'/3']


@on_clock
async def test_scopes_of_anyio_around_and_inside(kit):
    script = holding(chunked(b'5\r\nfirst\r\n'))

    async def around(client, url):
        with anyio.fail_after(2):
            await client.get(url, timeout=None)

    async def inside(client, url):
        async with client.stream('GET', url, timeout=None) as answer:
            pieces = answer.aiter_raw()
            assert await anext(pieces) == b'first'
            with anyio.move_on_after(2) as scope:
                await anext(pieces)
            assert scope.cancelled_caught
            assert asyncio.current_task().cancelling() == 0

    async with kit.talking(script, limits={'max_connections': 1}) as (client, server, _):
        for number, each in enumerate([around, around, inside, around], 1):
            task = asyncio.ensure_future(each(client, server.url))
            await until(lambda number=number: script.sent == number)
            await settling()
            await passing(1.99)
            assert not task.done()
            await passing(0.02)
            if each is around:
                with pytest.raises(TimeoutError):
                    await task
            else:
                await task
            await until(lambda number=number: script.closed == number)


@on_clock
async def test_times_of_asyncio_around(kit):
    script = holding()

    async def ask(client, url):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await client.get(url, timeout=None)
        assert asyncio.current_task().cancelling() == 0

    async with kit.talking(script, limits={'max_connections': 1}) as (client, server, _):
        for number in range(1, 3):
            task = asyncio.ensure_future(ask(client, server.url))
            await until(lambda number=number: script.sent == number)
            await passing(2.01)
            await task
            await until(lambda number=number: script.closed == number)


@check
async def test_a_group_of_tasks_around(kit):
    script = holding()
    async with kit.talking(script, limits={'max_connections': 1}) as (client, server, _):
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                group.create_task(client.get(server.url, timeout=None))
                await until(lambda: script.sent)
                raise ZeroDivisionError
        assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]
        await until(lambda: script.closed)


# --------------------------------------------------------------------------------------- time-outs


@on_clock
async def test_the_connect_time_bounds_connecting(kit):
    [sock] = bound_to('127.0.0.1')
    with sock, full_backlog(sock) as port:
        async with kit.client() as client:
            await times_out(kit, 'ConnectTimeout', 2, client.get(
                f'http://127.0.0.1:{port}/', timeout=kit.timeout(connect=2)))


@on_clock
async def test_the_connect_time_is_for_all_of_connecting(kit, monkeypatch):
    async def getaddrinfo(host, port, **_):
        await asyncio.sleep(1.5)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, '', ('127.0.0.1', port))]

    async def resolve(host):
        await asyncio.sleep(1.5)
        return [aiodnsresolver.IPv4AddressExpiresAt('127.0.0.1', expires_at=math.inf)]

    # Each library has its own way to look up a name slowly.
    asyncio.get_running_loop().getaddrinfo = getaddrinfo
    monkeypatch.setattr(kit.layer, 'Pool', functools.partial(
        lowhaio.Pool, get_dns_resolver=resolving(resolve)))
    async with kit.talking(lambda peer: peer.closed()) as (client, server, _):
        await times_out(
            kit, 'ConnectTimeout', kit.differs('connect-time', stock=3.5, ours=2),
            client.get(f'https://name.test:{server.port}/', timeout=kit.timeout(connect=2)))


@on_clock
async def test_the_connect_time_bounds_the_handshake(kit):
    async with kit.talking(lambda peer: peer.closed()) as (client, server, _):
        await times_out(kit, 'ConnectTimeout', 2, client.get(
            f'https://127.0.0.1:{server.port}/', timeout=kit.timeout(connect=2)),
            lambda: server.peers)


@on_clock
async def test_the_read_time_bounds_the_wait_for_the_head(kit):
    script = holding()
    async with kit.talking(script) as (client, server, _):
        error = await times_out(kit, 'ReadTimeout', 2, client.get(
            server.url, timeout=kit.timeout(read=2)), lambda: script.sent)
        assert error.request.url == server.url
        await until(lambda: script.closed)


@on_clock
async def test_the_read_time_bounds_each_wait_for_the_body(kit):
    script = holding(UNFINISHED)
    async with kit.talking(script) as (client, server, _):
        async with client.stream('GET', server.url, timeout=kit.timeout(read=2)) as answer:
            pieces = answer.aiter_raw()
            assert await anext(pieces) == b'ok'
            await times_out(kit, 'ReadTimeout', 2, anext(pieces))
        await until(lambda: script.closed)


@on_clock
async def test_pings_renew_the_read_time(kit):
    async def script(peer):
        await peer.read_head()
        await peer.send(chunked(b'', b'content-type: text/event-stream'))
        for _ in range(20):
            await asyncio.sleep(1.9)
            await peer.send(b'8\r\n: ping\n\n\r\n')
        await peer.send(b'b\r\ndata: end\n\n\r\n0\r\n\r\n')

    async with kit.talking(script) as (client, server, _):
        task = asyncio.ensure_future(client.get(server.url, timeout=kit.timeout(read=2)))
        await passing(20 * 1.9)
        await until(task.done)
        assert (await task).text == ': ping\n\n' * 20 + 'data: end\n\n'


@on_clock
async def test_a_head_that_trickles_in(kit):
    async def script(peer):
        await peer.read_head()
        for piece in OK[:10], OK[10:20], OK[20:]:
            await asyncio.sleep(0.9)
            await peer.send(piece)
        await peer.closed()

    async with kit.talking(script) as (client, server, _):
        asked = client.get(server.url, timeout=kit.timeout(read=1))
        if kit.differs('head-time', stock=False, ours=True):
            await times_out(kit, 'ReadTimeout', 1, asked, lambda: server.peers)
        else:
            task = asyncio.ensure_future(asked)
            await passing(2.8)
            await until(task.done)
            assert (await task).text == 'ok'


@on_clock
async def test_the_write_time_bounds_what_nobody_reads(kit):
    with deaf_server() as server:
        async with kit.client() as client:
            await times_out(kit, 'WriteTimeout', 2, client.post(
                server.url, content=BLOCKING, timeout=kit.timeout(write=2)))
            await settling()


@on_clock
async def test_the_write_time_is_for_each_chunk_of_a_generator(kit):
    async def generate():
        for _ in range(5):
            await asyncio.sleep(10)  # longer than all of the times
            yield b'x' * 1000

    async with kit.talking() as (client, server, script):
        task = asyncio.ensure_future(client.post(
            server.url, content=generate(), timeout=kit.timeout(write=2, read=2)))
        await passing(50)
        await until(task.done)
        assert (await task).text == 'ok'
        assert len(script.bodies[0]) > 5000


@on_clock
async def test_a_large_chunk_that_goes_out_slowly(kit):
    loop = asyncio.get_running_loop()
    data = bytes(20_000_000)
    with deaf_server() as server:
        server.listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1_000_000)
        async with kit.client() as client:
            task = asyncio.ensure_future(client.post(
                server.url, content=data, timeout=kit.timeout(write=1.5)))
            await settling()
            with server.accept() as accepted:
                total = 0
                while total < len(data) and not task.done():
                    # More each second than what the kernel holds, or it sees no progress.
                    await passing(1)
                    end = min(total + 3_000_000, len(data))
                    while total < end and (piece := await loop.sock_recv(accepted, 2 ** 18)):
                        total += len(piece)
                if kit.differs('write-progress', stock=False, ours=True):
                    accepted.send(OK)
                    assert (await task).text == 'ok'
                else:
                    await kit.failure('WriteTimeout', task)


@on_clock
async def test_the_pool_time_bounds_the_wait_for_a_place(kit):
    script = holding()
    async with kit.talking(script, limits={'max_connections': 1}) as (client, server, _):
        first = asyncio.ensure_future(client.get(server.url, timeout=None))
        await until(lambda: script.sent)
        await times_out(kit, 'PoolTimeout', 2, client.get(
            server.url, timeout=kit.timeout(pool=2)))
        assert not first.done()
        await cancelled(first)


@pytest.mark.parametrize(
    'what', ['None', 'Timeout(None)', 'no extension', 'one time', 'infinity', 'a million years'])
@on_clock
async def test_without_a_time_it_waits_for_ever(kit, what):
    async def script(peer):
        await peer.read_head()
        await asyncio.sleep(100_000)
        await peer.send(OK)

    async with kit.talking(script) as (client, server, _):
        # The client's own methods give each request the times of the client.
        ask = client._transport.handle_async_request
        if what == 'no extension':
            asked = ask(kit.http.Request('GET', server.url))
        elif what == 'one time':
            asked = ask(kit.http.Request(
                'GET', server.url, extensions={'timeout': {'connect': 1}}))
        else:
            times = {'None': None, 'Timeout(None)': kit.http.Timeout(None),
                     'infinity': float('inf'), 'a million years': 3e13}
            asked = client.get(server.url, timeout=times[what])
        task = asyncio.ensure_future(asked)
        await settling()
        await passing(99_999)
        assert not task.done()
        await passing(1)
        await until(task.done)
        assert await (await task).aread() == b'ok'


@check
async def test_no_time_at_all(kit):
    script = holding()
    async with kit.talking(script, limits={'max_connections': 1}) as (client, server, _):
        await kit.failure('ReadTimeout', client.get(server.url, timeout=kit.timeout(read=0)))
        # Where nothing has to be waited for, no time is enough.
        await until(lambda: script.closed)
        task = asyncio.ensure_future(client.get(server.url, timeout=kit.timeout(pool=0)))
        await until(lambda: script.sent == 2)
        await kit.failure('PoolTimeout', client.get(server.url, timeout=kit.timeout(pool=0)))
        await cancelled(task)


@on_clock
async def test_the_library_gives_five_seconds(kit):
    script = holding()
    async with kit.talking(script) as (client, server, _):
        await times_out(kit, 'ReadTimeout', 5, client.get(server.url), lambda: script.sent)


@on_clock
async def test_times_are_those_of_each_request(kit):
    async def script(peer):
        for seconds in 0, 3, 3:
            await peer.read_head()
            await asyncio.sleep(seconds)
            await peer.send(OK)
            script.sent += 1

    script.sent = 0
    async with kit.talking(script) as (client, server, _):
        await client.get(server.url, timeout=kit.timeout(read=1))
        task = asyncio.ensure_future(client.get(server.url, timeout=kit.timeout(read=4)))
        await settling()
        await passing(3)
        await until(task.done)
        assert (await task).text == 'ok'
        await times_out(kit, 'ReadTimeout', 2, client.get(
            server.url, timeout=kit.timeout(read=2)))
        assert len(server.peers) == 1


@on_clock
async def test_other_times_do_not_bound_reading(kit):
    async def script(peer):
        await peer.read_head()
        await asyncio.sleep(50)
        await peer.send(OK)

    async with kit.talking(script) as (client, server, _):
        task = asyncio.ensure_future(client.get(
            server.url, timeout=kit.timeout(connect=1, write=1, pool=1)))
        await settling()
        await passing(50)
        await until(task.done)
        assert (await task).text == 'ok'


# --------------------------------------------------------------------------------------------- TLS


@check
async def test_a_context_of_the_caller(kit):
    async with kit.talking(context=server_context()) as (client, server, script):
        for _ in range(2):
            assert (await client.get(server.url)).text == 'ok'
        assert script.connections == [0, 0]


@pytest.mark.parametrize('options', [{}, {'http2': True}], ids=['http1', 'http2 too'])
@check
async def test_the_protocol_of_the_application_is_offered(kit, options):
    context = certified('127.0.0.1')
    context.set_alpn_protocols(['http/1.1'])
    client_context = ssl.create_default_context()
    authority().configure_trust(client_context)
    async with kit.talking(
            context=context, verify=client_context, **options) as (client, server, _):
        answer = await client.get(server.url)
        assert answer.http_version == 'HTTP/1.1'
        tls = server.peers[0].writer.get_extra_info('ssl_object')
        assert tls.selected_alpn_protocol() == 'http/1.1'


@check
async def test_what_is_offered_with_http2(kit):
    context = certified('127.0.0.1')
    context.set_alpn_protocols(['h2', 'http/1.1'])
    client_context = ssl.create_default_context()
    authority().configure_trust(client_context)
    offered = []

    async def script(peer):
        offered.append(peer.writer.get_extra_info('ssl_object').selected_alpn_protocol())
        await peer.read_head()
        await peer.send(OK)

    async with kit.talking(
            script, context=context, verify=client_context, http2=True) as (client, server, _):
        with contextlib.suppress(Exception):
            # h2 need not be installed.
            await client.get(server.url)
        await until(lambda: offered)
        assert offered == kit.differs('alpn', stock=['h2'], ours=['http/1.1'])


@check
async def test_sessions_of_tls(kit):
    async def script(peer):
        are_reused.append(peer.writer.get_extra_info('ssl_object').session_reused)
        await Answering(OK)(peer)

    are_reused = []
    async with kit.talking(script, context=certified('127.0.0.1')) as (client, server, _):
        for _ in range(2):
            await client.get(server.url, headers={'connection': 'close'})
        assert are_reused == kit.differs(
            'sessions', stock=[False, False], ours=[False, True])


@check
async def test_a_certificate_of_an_authority_that_is_not_trusted(kit):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert('127.0.0.1').configure_cert(context)
    async with kit.talking(context=context) as (client, server, script):
        error = await kit.failure('ConnectError', client.get(server.url))
        assert 'CERTIFICATE_VERIFY_FAILED' in str(error)
        assert script.heads == []


@check
async def test_verify_false(kit):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert('other.test').configure_cert(context)
    async with kit.talking(context=context, verify=False) as (client, server, _):
        assert (await client.get(server.url)).text == 'ok'


@check
async def test_a_certificate_for_another_name(kit):
    async with kit.talking(context=certified('other.test')) as (client, server, script):
        error = await kit.failure('ConnectError', client.get(server.url))
        assert "IP address mismatch, certificate is not valid for '127.0.0.1'" in str(error)
        assert script.heads == []


@check
async def test_the_system_s_store_and_the_environment(kit, tmp_path, monkeypatch):
    path = tmp_path / 'ca.pem'
    authority().cert_pem.write_to_path(str(path))
    monkeypatch.setenv('SSL_CERT_FILE', str(path))
    async with Server(Answering(OK), server_context()) as server:
        async with kit.http.AsyncClient(transport=kit.Transport()) as client:
            assert (await client.get(server.url)).text == 'ok'
        async with kit.http.AsyncClient(transport=kit.Transport(trust_env=False)) as client:
            await kit.failure('ConnectError', client.get(server.url))


@check
async def test_a_path_for_verify_is_deprecated(kit, tmp_path):
    path = tmp_path / 'ca.pem'
    authority().cert_pem.write_to_path(str(path))
    with pytest.warns(DeprecationWarning, match='`verify=<str>` is deprecated'):
        transport = kit.Transport(verify=str(path))
    async with Server(Answering(OK), server_context()) as server:
        async with kit.http.AsyncClient(transport=transport) as client:
            assert (await client.get(server.url)).text == 'ok'


@pytest.mark.parametrize('way', ['context', 'cert'])
@check
async def test_a_certificate_of_the_client(kit, way, tmp_path):
    context = certified('127.0.0.1')
    authority().configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    own = authority().issue_cert('client.test')
    client_context = ssl.create_default_context()
    authority().configure_trust(client_context)
    options = {}
    if way == 'context':
        own.configure_cert(client_context)
    else:
        path = tmp_path / 'client.pem'
        own.private_key_and_cert_chain_pem.write_to_path(str(path))
        options['cert'] = str(path)
    with pytest.warns(DeprecationWarning, match='`cert=...` is deprecated') if options else (
            contextlib.nullcontext()):
        client = kit.client(verify=client_context, **options)
    async with Server(Answering(OK), context) as server, client:
        assert (await client.get(server.url)).text == 'ok'
        tls = server.peers[0].writer.get_extra_info('ssl_object')
        assert tls.getpeercert()['subjectAltName'] == (('DNS', 'client.test'),)


@pytest.mark.parametrize('version', [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3],
                         ids=['1.2', '1.3'])
@check
async def test_a_certificate_of_the_client_is_missing(kit, version):
    context = certified('127.0.0.1', version=version)
    authority().configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    async with kit.talking(context=context) as (client, server, script):
        # In TLS 1.3 the server refuses when the handshake is over for the client.
        with pytest.raises(kit.http.TransportError) as caught:
            await client.get(server.url)
        assert type(caught.value) in (
            [kit.http.ConnectError] if version is ssl.TLSVersion.TLSv1_2 else
            [kit.http.ReadError, kit.http.WriteError, kit.http.RemoteProtocolError])
        assert caught.value.request.url == server.url
        assert script.heads == []


@check
async def test_the_name_of_the_extension_is_that_of_tls(kit):
    names = []
    context = certified('one.test', 'two.test')
    context.sni_callback = lambda sock, name, context: names.append(name)
    async with kit.talking(context=context) as (client, server, script):
        for name in 'one.test', 'one.test', 'two.test', 'two.test':
            answer = await client.get(server.url, extensions={'sni_hostname': name})
            assert answer.text == 'ok'
        assert names == kit.differs('sni', stock=['one.test'], ours=['one.test', 'two.test'])
        assert script.connections == kit.differs('sni', stock=[0] * 4, ours=[0, 0, 1, 1])
        assert {value(sent, b'host') for sent in script.heads} == {
            b'127.0.0.1:%d' % server.port}
        assert target(script.heads[0]) == b'/'


@check
async def test_the_name_of_the_extension_is_that_of_the_certificate(kit):
    async with kit.talking(context=certified('one.test')) as (client, server, script):
        error = await kit.failure('ConnectError', client.get(
            server.url, extensions={'sni_hostname': 'two.test'}))
        assert "certificate is not valid for 'two.test'" in str(error)
        assert script.heads == []


@check
async def test_a_body_in_tls_that_ends_without_close_notify(kit):
    def script(sock):
        while b'\r\n\r\n' not in sock.recv(65536):
            pass
        sock.sendall(b'HTTP/1.1 200 OK\r\n\r\nhello')
        sock.setblocking(False)
        socket.socket.shutdown(sock, socket.SHUT_WR)

    with ThreadServer(script, server_context()) as server:
        async with kit.client() as client:
            asked = client.get(server.url)
            if kit.differs('tls-end', stock=False, ours=True):
                await kit.failure('RemoteProtocolError', asked)
            else:
                assert (await asked).text == 'hello'


@pytest.mark.parametrize('answer', [b'', b'HTTP/1.1 400 Bad Request\r\n\r\n'],
                         ids=['the end', 'no TLS'])
@check
async def test_a_handshake_that_is_answered_by(kit, answer):
    async def script(peer):
        await peer.read(5)
        await peer.send(answer)

    async with kit.talking(script) as (client, server, _):
        await kit.failure('ConnectError', client.get(f'https://127.0.0.1:{server.port}/'))


# ----------------------------------------------------------------------------------------- proxies


async def relay(peer, port):
    """Lead a connection on to a server of this machine."""
    reader, writer = await asyncio.open_connection('127.0.0.1', port)

    async def pump(source, sink):
        while data := await source.read(65536):
            sink.write(data)
        sink.close()

    try:
        await asyncio.gather(pump(peer.reader, writer), pump(reader, peer.writer))
    finally:
        writer.close()


class HttpProxy:
    """The script of a proxy which answers itself what is for http, and which leads each tunnel to
    the same server, or refuses it."""

    def __init__(self, port=None, answer=b'HTTP/1.1 200 Connection established\r\n\r\n'):
        self.port = port
        self.answer = answer
        self.heads = []

    async def __call__(self, peer):
        while True:
            sent = await peer.read_head()
            self.heads.append(sent)
            if sent.startswith(b'CONNECT '):
                await peer.send(self.answer)
                if self.port is None:
                    await peer.closed()
                else:
                    await relay(peer, self.port)
                return
            await peer.read_body(sent)
            await peer.send(response(200, b'of the proxy'))


class Socks5Proxy:
    """The script of a proxy which leads each connection to the same server, or refuses it."""

    def __init__(self, port, credentials=None, reply=0):
        self.port = port
        self.credentials = credentials
        self.reply = reply
        self.asked = []

    async def __call__(self, peer):
        version, count = await peer.read(2)
        wanted = 0 if self.credentials is None else 2
        has_it = wanted in await peer.read(count)
        await peer.send(bytes([version, wanted if has_it else 255]))
        if not has_it:
            return
        if self.credentials is not None:
            given = []
            await peer.read(1)
            for _ in range(2):
                [length] = await peer.read(1)
                given.append(await peer.read(length))
            is_right = given == self.credentials
            await peer.send(b'\1\0' if is_right else b'\1\1')
            if not is_right:
                return
        *_, kind = await peer.read(4)
        length = {1: 4, 4: 16}.get(kind) or (await peer.read(1))[0]
        host = await peer.read(length)
        self.asked.append((host, int.from_bytes(await peer.read(2), 'big')))
        await peer.send(bytes([5, self.reply, 0, 1, 127, 0, 0, 1, 0, 0]))
        if not self.reply:
            await relay(peer, self.port)


@contextlib.asynccontextmanager
async def through(kit, proxy, *, user='', scheme='http', server=None, as_object=None):
    """A client that goes through a proxy with that script, and the server of the proxy."""
    async with Server(proxy) as proxy_server:
        if server is not None:
            proxy.port = server.port
        url = f'{scheme}://{user}127.0.0.1:{proxy_server.port}'
        given = url if as_object is None else kit.http.Proxy(url, **as_object)
        async with kit.client(proxy=given) as client:
            yield client, proxy_server


@check
async def test_a_proxy_gets_the_whole_url_of_http(kit):
    async with through(kit, proxy := HttpProxy()) as (client, server):
        answer = await client.post('http://name.test:81/a?b=[c]#d', content=b'hello')
        assert answer.text == 'of the proxy'
        await client.get('http://b\xfccher.test')
        assert [target(sent) for sent in proxy.heads] == [
            b'http://name.test:81/a?b=[c]', b'http://xn--bcher-kva.test/']
        assert [value(sent, b'host') for sent in proxy.heads] == [
            b'name.test:81', b'xn--bcher-kva.test']
        assert value(proxy.heads[0], b'proxy-authorization') is None


@check
async def test_a_proxy_gets_its_credentials_and_fields(kit):
    for user, options in ('user:p%40ss@', {}), ('', {'auth': ('user', 'p@ss')}):
        async with through(kit, proxy := HttpProxy(), user=user, as_object={
                **options, 'headers': {'X-Proxy': 'one'}}) as (client, server):
            await client.get('http://name.test/a', headers={'x-own': 'two'})
            [sent] = proxy.heads
            assert values_of(sent, b'proxy-authorization') == [
                b'Basic ' + base64.b64encode(b'user:p@ss')]
            assert values_of(sent, b'x-proxy') == [b'one']
            assert values_of(sent, b'x-own') == [b'two']
            assert values_of(sent, b'authorization') == []


@check
async def test_a_proxy_makes_a_tunnel_for_https(kit):
    script = Answering(OK)
    async with Server(script, server_context()) as server:
        async with through(kit, proxy := HttpProxy(), server=server, user='user:pass@', as_object={
                'headers': {'x-proxy': 'one'}}) as (client, proxy_server):
            for number in range(3):
                answer = await client.get(f'https://name.test/{number}?a={{b}}')
                assert answer.text == 'ok'
        [sent] = proxy.heads
        assert target(sent) == b'name.test:443'
        assert value(sent, b'host') == b'name.test:443'
        assert values_of(sent, b'x-proxy') == [b'one']
        assert values_of(sent, b'proxy-authorization') == [
            b'Basic ' + base64.b64encode(b'user:pass')]
        assert [target(sent) for sent in script.heads] == [
            answer.request.url.raw_path.replace(b'2', b'%d' % number) for number in range(3)]
        for sent in script.heads:
            assert value(sent, b'host') == b'name.test'
            assert values_of(sent, b'proxy-authorization') == values_of(sent, b'x-proxy') == []
        assert script.connections == [0, 0, 0]


@check
async def test_a_proxy_refuses_a_tunnel(kit):
    async with through(kit, proxy := HttpProxy()) as (client, server):
        for line in b'407 Proxy Authentication Required', b'403 Forbidden', b'502 Bad Gateway':
            with row(line):
                proxy.answer = head(b'content-length: 4', start=b'HTTP/1.1 ' + line) + b'no!\n'
                error = await kit.failure('ProxyError', client.get('https://name.test/'))
                assert line.decode() in str(error)
                await until(lambda: server.peers[-1].reader.at_eof())
        assert len(server.peers) == 3


@check
async def test_a_proxy_refuses_a_request_of_http(kit):
    wire = response(407, b'who?', b'proxy-authenticate: Basic realm="x"')
    async with Server(Answering(wire)) as server:
        async with kit.client(proxy=server.origin) as client:
            answer = await client.get('http://name.test/')
            assert (answer.status_code, answer.text) == (407, 'who?')


@check
async def test_a_proxy_that_is_not_there(kit):
    [sock] = bound_to('127.0.0.1')
    with sock:
        url = f'http://127.0.0.1:{sock.getsockname()[1]}'
        async with kit.client(proxy=url) as client:
            for scheme in 'http', 'https':
                await kit.failure('ConnectError', client.get(f'{scheme}://name.test/'))


@check
async def test_a_proxy_that_hangs_up_instead_of_making_a_tunnel(kit):
    async with Server(closing(b'')) as server:
        async with kit.client(proxy=server.origin) as client:
            with pytest.raises(kit.http.TransportError) as caught:
                await client.get('https://name.test/')
            assert type(caught.value) in [
                kit.http.RemoteProtocolError, kit.http.ProxyError, kit.http.ConnectError]
            assert caught.value.request.url == 'https://name.test/'


@check
async def test_the_certificate_behind_a_proxy_is_checked(kit):
    async with Server(Answering(OK), certified('other.test')) as server:
        async with through(kit, HttpProxy(), server=server) as (client, _):
            error = await kit.failure('ConnectError', client.get('https://name.test/'))
            assert "certificate is not valid for 'name.test'" in str(error)


@on_clock
async def test_a_proxy_that_does_not_answer(kit):
    async with Server(lambda peer: peer.closed()) as server:
        async with kit.client(proxy=server.origin) as client:
            task = asyncio.ensure_future(client.get(
                'https://name.test/', timeout=kit.timeout(connect=2, read=2)))
            await until(lambda: server.peers)
            await settling()
            await passing(3)
            await until(task.done)
            # Stock reads the answer to CONNECT as it reads any.
            await kit.failure(kit.differs(
                'tunnel-time', stock='ReadTimeout', ours='ConnectTimeout'), task)


@check
async def test_a_proxy_that_is_reached_by_tls(kit):
    proxy = HttpProxy()
    async with Server(proxy, server_context()) as server:
        given = kit.http.Proxy(server.origin, ssl_context=trusting())
        if kit.differs('tls-proxy', stock=False, ours=True):
            with pytest.raises(ValueError, match='(?i)proxy'):
                kit.transport(proxy=given)
        else:
            async with kit.client(proxy=given) as client:
                assert (await client.get('http://name.test/')).text == 'of the proxy'


@check
async def test_a_proxy_and_an_address_to_connect_from(kit):
    async with Server(HttpProxy()) as server:
        async with kit.client(proxy=server.origin, local_address='127.0.0.2') as client:
            await client.get('http://name.test/')
        assert server.peers[0].writer.get_extra_info('peername')[0] == kit.differs(
            'proxy-options', stock='127.0.0.1', ours='127.0.0.2')


@on_clock
async def test_a_proxy_and_retries(kit):
    [sock] = bound_to('127.0.0.1')
    with sock:
        async with kit.client(
                proxy=f'http://127.0.0.1:{sock.getsockname()[1]}', retries=2) as client:
            task = asyncio.ensure_future(client.get('http://name.test/', timeout=None))
            await settling()
            await passing(0.49)
            assert task.done() is kit.differs('proxy-options', stock=True, ours=False)
            await passing(0.02)
            await until(task.done)
            await kit.failure('ConnectError', task)


@check
async def test_a_proxy_of_another_scheme_is_refused(kit):
    with pytest.raises(ValueError, match='Unknown scheme for proxy URL'):
        kit.transport(proxy='ftp://127.0.0.1:1')


@pytest.mark.parametrize('scheme', ['http', 'https'])
@check
async def test_a_proxy_of_socks5(kit, scheme):
    script = Answering(OK)
    async with Server(script, server_context() if scheme == 'https' else None) as server:
        for number, (kind, credentials) in enumerate(
                [('socks5', None), ('socks5h', None), ('socks5', [b'user', b'p@ss'])]):
            proxy = Socks5Proxy(server.port, credentials)
            async with through(kit, proxy, scheme=kind,
                               user='user:p%40ss@' if credentials else '') as (client, _):
                for _ in range(2):
                    answer = await client.get(f'{scheme}://name.test/a')
                    assert answer.text == 'ok'
            assert proxy.asked == [(b'name.test', {'http': 80, 'https': 443}[scheme])]
            assert script.connections[-2:] == [number, number]
        assert {target(sent) for sent in script.heads} == {b'/a'}


@check
async def test_a_proxy_of_socks5_refuses(kit):
    for credentials, reply in (None, 1), (None, 5), (None, 8), ([b'user', b'other'], 0):
        proxy = Socks5Proxy(None, credentials, reply)
        with row((credentials, reply)):
            async with through(
                    kit, proxy, scheme='socks5',
                    user='user:pass@' if credentials else '') as (client, server):
                await kit.failure('ProxyError', client.get('http://name.test/'))
                await until(lambda: server.peers[0].writer.is_closing())  # noqa: B023


@check
async def test_a_proxy_of_socks5_wants_a_name(kit):
    async with through(kit, Socks5Proxy(None, [b'user', b'pass']), scheme='socks5') as (client, _):
        await kit.failure('ProxyError', client.get('http://name.test/'))


@pytest.fixture
def no_proxies(monkeypatch):
    """An environment without proxies."""
    for name in 'HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY', 'NO_PROXY':
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return monkeypatch


@check
async def test_the_proxies_of_the_environment(kit, no_proxies):
    script = Answering(OK)
    async with Server(script, server_context()) as server, Server(Answering(OK)) as plain:
        proxy = HttpProxy(server.port)
        async with Server(proxy) as proxy_server:
            no_proxies.setenv('HTTP_PROXY', proxy_server.origin)
            no_proxies.setenv('HTTPS_PROXY', f'127.0.0.1:{proxy_server.port}')
            no_proxies.setenv('NO_PROXY', '127.0.0.1,other.test')
            async with kit.Client(verify=trusting()) as client:
                assert (await client.get('http://name.test/a')).text == 'of the proxy'
                assert (await client.get('https://name.test/b')).text == 'ok'
                assert (await client.get(plain.url)).text == 'ok'
            assert [target(sent) for sent in proxy.heads] == [
                b'http://name.test/a', b'name.test:443']
            no_proxies.delenv('NO_PROXY')
            async with kit.Client(verify=trusting()) as client:
                assert (await client.get(plain.url)).text == 'of the proxy'
            async with kit.Client(verify=trusting(), trust_env=False) as client:
                assert (await client.get(plain.url)).text == 'ok'
            # A transport that is given to a client switches the environment off.
            async with kit.client() as client:
                assert (await client.get(plain.url)).text == 'ok'


@check
async def test_the_proxy_and_the_mounts_of_a_client(kit, no_proxies):
    async with Server(HttpProxy()) as proxy_server, Server(Answering(OK)) as server:
        async with kit.Client(proxy=proxy_server.origin, verify=trusting()) as client:
            assert (await client.get(server.url)).text == 'of the proxy'
        mounts = {'all://name.test': kit.transport(proxy=proxy_server.origin),
                  'all://none.test': None}
        async with kit.Client(mounts=mounts, verify=trusting()) as client:
            assert (await client.get('http://name.test/')).text == 'of the proxy'
            assert (await client.get(server.url)).text == 'ok'


@check
async def test_the_client_class_takes_what_the_other_takes(kit, no_proxies):
    async def hook(request):
        hooked.append(request.url.path)

    hooked = []
    script = Answering(response(302, b'', b'location: /b', b'set-cookie: c=d'), OK)
    async with Server(script, server_context()) as server:
        async with kit.Client(
                verify=trusting(), base_url=server.url, headers={'x-a': 'b'}, params={'q': '1'},
                follow_redirects=True, auth=('user', 'pass'), timeout=3, cookies={'e': 'f'},
                limits=kit.http.Limits(max_connections=1), event_hooks={'request': [hook]},
                http1=True, default_encoding='latin-1') as client:
            assert (await client.get('a')).text == 'ok'
        assert script.lines[0] == 'GET /a?q=1'
        assert script.lines[1].startswith('GET /b')
        assert value(script.heads[1], b'x-a') == b'b'
        assert set(value(script.heads[1], b'cookie').split(b'; ')) == {b'c=d', b'e=f'}
        assert hooked == ['/a', '/b']
        assert len(server.peers) == 1


# ----------------------------------------------------------------------------------------- sockets


@pytest.mark.parametrize('scheme', ['http', 'https'])
@check
async def test_a_unix_socket(kit, scheme, tmp_path):
    streams = Streams(server_context() if scheme == 'https' else None)
    async with unix_streams(streams, tmp_path):
        async with kit.client(uds=str(tmp_path / 's')) as client:
            for _ in range(2):
                assert (await client.get(f'{scheme}://name.test/a')).text == 'ok'
        assert [target(sent) for sent in streams.heads] == [b'/a', b'/a']
        assert value(streams.heads[0], b'host') == b'name.test'
        assert streams.connections == [0, 0]
        await streams.all_ended()


@check
async def test_a_unix_socket_that_is_not_there(kit, tmp_path):
    async with kit.client(uds=str(tmp_path / 'none')) as client:
        await kit.failure('ConnectError', client.get('http://name.test/'))


@check
async def test_an_address_to_connect_from(kit):
    async with kit.talking(local_address='127.0.0.2') as (client, server, _):
        await client.get(server.url)
        assert server.peers[0].writer.get_extra_info('peername')[0] == '127.0.0.2'


def sockets_of_this_process():
    """A duplicate of each socket of TCP that this process has open."""
    for name in os.listdir('/dev/fd'):
        with contextlib.suppress(OSError):
            descriptor = os.dup(int(name))
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                continue
            with socket.socket(fileno=descriptor) as sock:
                if sock.family == socket.AF_INET and sock.type == socket.SOCK_STREAM:
                    yield sock


@check
async def test_options_of_the_socket(kit):
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
               (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 77)]
    async with kit.talking(socket_options=options) as (client, server, _):
        await client.get(server.url)
        address = server.peers[0].writer.get_extra_info('peername')
        options.append((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1))
        [values] = [[sock.getsockopt(level, name) for level, name, _ in options]
                    for sock in sockets_of_this_process() if sock.getsockname() == address]
        assert values == [1, 77, 1]


@check
async def test_options_of_the_socket_that_count_for_connecting(kit):
    options = [(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1000)]
    async with kit.talking(socket_options=options) as (client, server, _):
        await client.get(server.url)
        told = server.peers[0].sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
        assert (told <= 1000) is kit.differs('socket-options', stock=False, ours=True)


@check
async def test_ipv6(kit):
    [sock] = bound_to_each('::1')
    script = Answering(OK)
    with sock:
        port = sock.getsockname()[1]
        server = await asyncio.start_server(Server(script).serve, sock=sock)
        async with server, kit.client() as client:
            assert (await client.get(f'http://[::1]:{port}/')).text == 'ok'
        assert value(script.heads[0], b'host') == b'[::1]:%d' % port


@check
async def test_a_name_of_the_hosts_file(kit):
    async with kit.talking() as (client, server, script):
        url = f'http://localhost:{server.port}/'
        for _ in range(2):
            assert (await client.get(url)).text == 'ok'
        assert value(script.heads[0], b'host') == b'localhost:%d' % server.port
        assert script.connections == [0, 0]
        if isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop):
            # The threads of uvloop are not Python's.
            assert any(thread.name.startswith('asyncio_') for thread in threading.enumerate()) is (
                kit.differs('names', stock=True, ours=False))


@on_clock
async def test_connecting_is_tried_again(kit):
    [sock] = bound_to('127.0.0.1')
    port = sock.getsockname()[1]
    script = Answering(OK)
    async with kit.client(retries=3) as client:
        task = asyncio.ensure_future(client.post(
            f'http://127.0.0.1:{port}/', content=b'hello', timeout=None))
        await settling()
        await passing(0.49)  # after the first retry, at once, and before the second
        async with ServerAt(sock, script):
            await settling()
            assert (script.heads, task.done()) == ([], False)
            await passing(0.02)
            await until(task.done)
            assert (await task).text == 'ok'
            assert script.bodies == [b'hello']


@on_clock
async def test_connecting_is_given_up(kit):
    [sock] = bound_to('127.0.0.1')
    with sock:
        for retries, seconds in (0, 0), (1, 0), (2, 0.5), (3, 1.5), (4, 3.5):
            with row(retries):
                async with kit.client(retries=retries) as client:
                    task = asyncio.ensure_future(client.get(
                        f'http://127.0.0.1:{sock.getsockname()[1]}/', timeout=None))
                    await settling()
                    if seconds:
                        await passing(seconds - 0.01)
                        assert not task.done()
                        await passing(0.02)
                    await until(task.done)
                    await kit.failure('ConnectError', task)


@on_clock
async def test_connecting_that_takes_too_long_is_tried_again(kit):
    [sock] = bound_to('127.0.0.1')
    with sock, full_backlog(sock) as port:
        async with kit.client(retries=1) as client:
            await times_out(kit, 'ConnectTimeout', 4, client.get(
                f'http://127.0.0.1:{port}/', timeout=kit.timeout(connect=2)))


@check
async def test_what_comes_after_connecting_is_not_tried_again(kit):
    async with kit.talking(script := closing(), retries=3) as (client, server, _):
        await kit.failure('RemoteProtocolError', client.get(server.url))
        assert len(script.heads) == len(server.peers) == 1


@on_clock
async def test_waiting_for_a_place_is_not_tried_again(kit):
    script = holding()
    async with kit.talking(
            script, retries=3, limits={'max_connections': 1}) as (client, server, _):
        first = asyncio.ensure_future(client.get(server.url, timeout=None))
        await until(lambda: script.sent)
        await times_out(kit, 'PoolTimeout', 2, client.get(
            server.url, timeout=kit.timeout(pool=2)))
        await cancelled(first)


@check
async def test_what_a_proxy_refuses_is_not_tried_again(kit):
    proxy = HttpProxy(answer=head(b'content-length: 0', start=b'HTTP/1.1 403 Forbidden'))
    async with Server(proxy) as server, kit.client(proxy=server.origin, retries=3) as client:
        await kit.failure('ProxyError', client.get('https://name.test/'))
        assert len(proxy.heads) == 1


@check
async def test_http2_alone(kit):
    if kit.differs('http2', stock=False, ours=True):
        with pytest.raises(ValueError, match='http1'):
            kit.transport(http1=False, http2=True)
    else:
        kit.transport(http1=False, http2=True)


# ------------------------------------------------------------------------------------------ errors


@check
async def test_a_url_of_another_scheme(kit):
    async with kit.client() as client:
        for url in 'ftp://name.test/', 'name.test', '/path', 'mailto:a@b', 'HTTPX://name.test':
            with row(url):
                await kit.failure('UnsupportedProtocol', client.get(url))


@check
async def test_a_port_that_refuses(kit):
    [sock] = bound_to('127.0.0.1')
    with sock:
        port = sock.getsockname()[1]
        async with kit.client() as client:
            for method in 'GET', 'POST':
                error = await kit.failure(
                    'ConnectError', client.request(method, f'http://127.0.0.1:{port}/a'))
                assert error.request.method == method
                assert error.request.url.path == '/a'


@check
async def test_a_name_that_does_not_exist(kit, monkeypatch):
    # No nameserver is asked for a label of more than 63 bytes, and stock has no other way to
    # find out here.
    host = 'none.test' if kit.is_ours else f'{"a" * 64}.test'
    monkeypatch.setattr(kit.layer, 'Pool', functools.partial(
        lowhaio.Pool, get_dns_resolver=resolving(no_address)))
    async with kit.client() as client:
        for scheme in 'http', 'https':
            error = await kit.failure('ConnectError', client.get(f'{scheme}://{host}/'))
            if kit.is_ours:
                assert isinstance(error.__cause__, lowhaio.HttpDnsError)


@check
async def test_what_can_be_no_name(kit):
    async with kit.client() as client:
        await kit.failure(kit.differs(
            'host-name', stock='ConnectError', ours='LocalProtocolError'),
            client.get(f'http://{"a" * 64}.test/'))


NONSENSE = {
    'no HTTP': b'SSH-2.0-OpenSSH_9\r\n\r\n',
    'no code': b'HTTP/1.1 OK\r\n\r\n',
    'a code of two digits': b'HTTP/1.1 20 OK\r\n\r\n',
    'no colon': b'HTTP/1.1 200 OK\r\nfield\r\n\r\n',
    'space before the colon': b'HTTP/1.1 200 OK\r\na : b\r\n\r\n',
    'a NUL in a value': b'HTTP/1.1 200 OK\r\na: b\0c\r\n\r\n',
    'a length that is none': b'HTTP/1.1 200 OK\r\ncontent-length: ten\r\n\r\n',
    'a negative length': b'HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n',
    'two lengths': b'HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nok',
    'another coding': b'HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n',
    'a size that is none': CHUNKED + b'x\r\n',
    'no end of a chunk': CHUNKED + b'1\r\nxxx',
    'an end at once': b'',
    'an end in the head': b'HTTP/1.1 200 OK\r\ncontent-len',
    'an end after a head of a 100': CONTINUE,
    'an end in the body': UNFINISHED,
    'an end between chunks': CHUNKED,
    'an end in a chunk': CHUNKED + b'5\r\nhe',
    'an end in the trailers': CHUNKED + b'0\r\na: b\r\n',
}


@check
async def test_nonsense_and_what_is_cut_off(kit):
    async with kit.talking(None) as (client, server, _):
        for name, wire in NONSENSE.items():
            with row(name):
                server.script = closing(wire)
                error = await kit.failure('RemoteProtocolError', client.get(server.url))
                assert error.request.url == server.url
                assert str(error)
        assert len(server.peers) == len(NONSENSE)


@check
async def test_a_status_line_of_another_version(kit):
    async with kit.talking(None) as (client, server, _):
        for version in b'HTTP/3.0', b'HTTP/2.0', b'HTTP/0.9':
            with row(version):
                server.script = closing(
                    head(b'content-length: 2', start=version + b' 200 OK') + b'ok')
                asked = client.get(server.url, headers={'connection': 'close'})
                if kit.differs('version', stock=False, ours=True):
                    await kit.failure('RemoteProtocolError', asked)
                else:
                    assert (await asked).http_version == version.decode()


@check
async def test_a_reset_while_reading(kit):
    async with kit.talking(None) as (client, server, _):
        for wire in b'', b'HTTP/1.1 200 OK\r\n', UNFINISHED, CHUNKED:
            with row(wire):
                server.script = resetting(wire)
                await kit.failure('ReadError', client.get(server.url))


@check
async def test_a_reset_while_writing(kit):
    async def script(peer):
        await peer.read_head()
        peer.reset()

    async with kit.talking(script) as (client, server, _):
        with pytest.raises(kit.http.NetworkError) as caught:
            await client.post(server.url, content=BLOCKING)
        assert type(caught.value) in [kit.http.ReadError, kit.http.WriteError]
        assert caught.value.request.method == 'POST'


@pytest.mark.parametrize('name, wire', [
    ('RemoteProtocolError', b''), ('ReadError', None), ('RemoteProtocolError', b'x\r\n'),
], ids=['cut off', 'reset', 'nonsense'])
@check
async def test_errors_in_the_middle_of_a_stream(kit, name, wire):
    goes_on = asyncio.Event()

    async def script(peer):
        await peer.read_head()
        await peer.send(chunked(b'2\r\nok\r\n'))
        await goes_on.wait()
        if wire is None:
            peer.reset()
        else:
            await peer.send(wire)

    async with kit.talking(script) as (client, server, _):
        async with client.stream('GET', server.url) as answer:
            pieces = answer.aiter_bytes()
            assert await anext(pieces) == b'ok'
            goes_on.set()
            error = await kit.failure(name, anext(pieces))
            assert error.request is answer.request
            assert answer.is_closed is (kit.library == 'httpx2')  # which closes it itself
            with pytest.raises(kit.http.StreamError):
                await answer.aread()


@check
async def test_an_error_has_the_cause_that_lowhaio_gives(kit):
    async with kit.talking(closing(UNFINISHED)) as (client, server, _):
        error = await kit.failure('RemoteProtocolError', client.get(server.url))
        if kit.is_ours:
            assert isinstance(error.__cause__, lowhaio.HttpConnectionClosedError)
            assert str(error) == str(error.__cause__)
            assert f'GET {server.origin} (peer 127.0.0.1:{server.port})' in str(error)
        else:
            assert isinstance(error.__cause__, kit.core.RemoteProtocolError)


@check
async def test_after_any_error_the_next_request_works(kit):
    answers = iter([b'nonsense\r\n\r\n', UNFINISHED, b'', CHUNKED + b'x\r\n', OK])

    async def script(peer):
        await peer.read_head()
        await peer.send(next(answers))

    async with kit.talking(script, limits={'max_connections': 1}) as (client, server, _):
        for _ in range(4):
            await kit.failure('RemoteProtocolError', client.get(server.url))
        assert (await client.get(server.url, timeout=kit.timeout(pool=1))).text == 'ok'


@check
async def test_what_follows_a_response_is_never_the_next_one(kit):
    async with kit.talking(OK + response(200, b'forged'), OK) as (client, server, script):
        assert (await client.get(server.url)).text == 'ok'
        if kit.is_ours:  # what stock makes of it is not of interest here
            assert (await client.get(server.url)).text == 'ok'
            assert script.connections == [0, 1]


# -------------------------------------------------------------------- what the library does on top


@check
async def test_redirects(kit):
    script = Answering(
        response(301, b'moved', b'location: /b'), response(303, b'', b'location: c?d#e'),
        response(307, b'', b'location: /f'), OK)
    async with kit.talking(script, client={'follow_redirects': True}) as (client, server, _):
        answer = await client.get(server.url + 'a')
        assert [each.status_code for each in answer.history] == [301, 303, 307]
        assert answer.url.path == '/f'
        assert script.lines == ['GET /a', 'GET /b', 'GET /c?d', 'GET /f']
        assert script.connections == [0] * 4


@check
async def test_redirects_of_a_post(kit):
    codes = [303, 302, 307, 308]
    wires = [wire for code in codes for wire in (response(code, b'', b'location: /b'), OK)]
    async with kit.talking(
            *wires, client={'follow_redirects': True}) as (client, server, script):
        for _ in codes:
            assert (await client.post(server.url, content=b'hello')).text == 'ok'
        assert script.lines[1::2] == ['GET /b', 'GET /b', 'POST /b', 'POST /b']
        assert script.bodies[1::2] == [b'', b'', b'hello', b'hello']
        assert len(server.peers) == 1


@check
async def test_too_many_redirects(kit):
    script = response(302, b'', b'location: /')
    async with kit.talking(
            script, client={'follow_redirects': True, 'max_redirects': 3}) as (client, server, _):
        await kit.failure('TooManyRedirects', client.get(server.url))


@check
async def test_cookies(kit):
    script = Answering(
        response(200, b'', b'set-cookie: a=b; path=/', b'set-cookie: c=d; path=/x'), OK)
    async with kit.talking(script) as (client, server, _):
        answer = await client.get(server.url)
        assert dict(answer.cookies) == {'a': 'b', 'c': 'd'}
        await client.get(server.url)
        await client.get(server.url + 'x')
        assert [value(sent, b'cookie') for sent in script.heads] == [None, b'a=b', b'c=d; a=b']


@check
async def test_digest_authentication(kit):
    challenge = response(
        401, b'who?', b'www-authenticate: Digest realm="r", nonce="n", qop="auth"')
    async with kit.talking(challenge, OK) as (client, server, script):
        auth = kit.http.DigestAuth('user', 'pass')
        answer = await client.post(server.url + 'a', content=b'hello', auth=auth)
        assert answer.text == 'ok'
        assert script.bodies == [b'hello'] * 2
        given = value(script.heads[1], b'authorization').decode()
        assert given.startswith('Digest username="user", realm="r", nonce="n", uri="/a"')
        assert script.connections == [0, 0]


@check
async def test_a_flow_of_authentication_that_reads_bodies(kit):
    class Flow(kit.http.Auth):
        requires_response_body = True
        requires_request_body = True

        def auth_flow(self, request):
            answer = yield kit.http.Request('POST', request.url.copy_with(path='/token'),
                                            content=b'please')
            request.headers['authorization'] = 'Bearer ' + answer.text
            yield request

    async with kit.talking(response(200, b'secret'), OK) as (client, server, script):
        assert (await client.get(server.url, auth=Flow())).text == 'ok'
        assert script.lines == ['POST /token', 'GET /']
        assert value(script.heads[1], b'authorization') == b'Bearer secret'


@check
async def test_hooks_statuses_and_the_time_that_it_took(kit):
    async def hook(answer):
        await answer.aread()
        seen.append(answer.text)

    seen = []
    async with kit.talking(
            response(500, b'oh'), client={'event_hooks': {'response': [hook]}}) as (
            client, server, _):
        answer = await client.get(server.url)
        assert seen == ['oh']
        assert answer.elapsed.total_seconds() >= 0
        with pytest.raises(kit.http.HTTPStatusError, match=r"Server error '500 Reason'"):
            answer.raise_for_status()


@check
async def test_the_log_of_the_library(kit, caplog):
    async with kit.talking() as (client, server, _):
        with caplog.at_level(logging.INFO, logger=kit.library):
            await client.get(server.url + 'a')
    assert [record.getMessage() for record in caplog.records if record.name == kit.library] == [
        f'HTTP Request: GET {server.url}a "HTTP/1.1 200 OK"']


def in_chunks(*pieces):
    """A body of these chunks, with its end."""
    return b''.join(b'%x\r\n%s\r\n' % (len(piece), piece) for piece in (*pieces, b''))


EVENTS = chunked(
    in_chunks(b'event: a\ndata: one\n\n: ping\n\ndata', b': two\ndata: x\n\n'),
    b'content-type: text/event-stream')


@check
async def test_server_sent_events(kit):
    async with kit.talking(EVENTS) as (client, server, script):
        source = client.sse(server.url) if kit.library == 'httpx2' else (
            httpx_sse.aconnect_sse(client, 'GET', server.url))
        async with source as events:
            events = events if kit.library == 'httpx2' else events.aiter_sse()
            assert [(event.event, event.data) async for event in events] == [
                ('a', 'one'), ('message', 'two\nx')]
        await client.get(server.url)
        assert script.connections == [0, 0]


@check
async def test_server_sent_events_that_are_cut_off(kit):
    async with kit.talking(closing(EVENTS[:-5])) as (client, server, _):
        source = client.sse(server.url) if kit.library == 'httpx2' else (
            httpx_sse.aconnect_sse(client, 'GET', server.url))
        async with source as events:
            events = aiter(events) if kit.library == 'httpx2' else events.aiter_sse()
            assert [(await anext(events)).data for _ in range(2)] == ['one', 'two\nx']
            await kit.failure('RemoteProtocolError', anext(events))


TRACED = ['connection.connect_tcp', 'http11.send_request_headers', 'http11.send_request_body',
          'http11.receive_response_headers', 'http11.receive_response_body',
          'http11.response_closed']


@check
async def test_the_trace_extension(kit):
    async def trace(name, info):
        assert isinstance(info, dict)
        seen.append(name)

    seen = []
    async with kit.talking() as (client, server, _):
        await client.post(server.url, content=b'hello', extensions={'trace': trace})
        names = [f'{name}.{end}' for name in TRACED for end in ('started', 'complete')]
        assert seen == kit.differs('trace', stock=names, ours=names[7:])


# -------------------------------------------------------------------------------------- WebSockets


@contextlib.asynccontextmanager
async def websocket_server(handler, context=None, **options):
    async with websockets.asyncio.server.serve(
            handler, '127.0.0.1', 0, ssl=context, **options) as server:
        yield server.sockets[0].getsockname()[1]


def websocket(kit, client, url, **options):
    """A session of the library's own WebSockets, or of httpx-ws."""
    if kit.library == 'httpx2':
        return client.websocket(url, **options)
    return httpx_ws.aconnect_ws(url, client, **options)


async def echo(connection):
    async for message in connection:
        await connection.send(message)


@pytest.mark.parametrize('scheme', ['ws', 'wss', 'http'])
@check
async def test_websockets(kit, scheme):
    context = server_context() if scheme == 'wss' else None
    async with (websocket_server(echo, context, subprotocols=['chat']) as port,
                kit.client() as client):
        for _ in range(2):
            async with websocket(kit, client, f'{scheme}://127.0.0.1:{port}/',
                                 subprotocols=['chat']) as session:
                assert session.subprotocol == 'chat'
                await session.send_text('h\xe9llo')
                assert await session.receive_text() == 'h\xe9llo'
                await session.send_bytes(bytes(60_000))
                assert await session.receive_bytes() == bytes(60_000)
                await session.send_json({'a': 1})
                assert await session.receive_json() == {'a': 1}
                await (await session.ping()).wait()


@check
async def test_a_server_that_pings_and_sends_at_once(kit):
    async def handler(connection):
        await connection.send('first')
        await (await connection.ping())  # answered
        await connection.send('second')
        await connection.close(4001, 'enough')

    async with websocket_server(handler) as port, kit.client() as client:
        async with websocket(kit, client, f'ws://127.0.0.1:{port}/') as session:
            assert [await session.receive_text() for _ in range(2)] == ['first', 'second']
            kind = {'httpx2': 'httpx2.websockets', 'httpx': 'httpx_ws'}[kit.library]
            with pytest.raises(sys.modules[kind].WebSocketDisconnect) as caught:
                await session.receive_text()
            assert (caught.value.code, caught.value.reason) == (4001, 'enough')


@check
async def test_an_upgrade_that_is_refused(kit):
    async with kit.talking(response(403, b'no')) as (client, server, _):
        kind = {'httpx2': 'httpx2.websockets', 'httpx': 'httpx_ws'}[kit.library]
        with pytest.raises(sys.modules[kind].WebSocketUpgradeError) as caught:
            async with websocket(kit, client, server.url.replace('http', 'ws')):
                raise AssertionError
        assert caught.value.response.status_code == 403


@check
async def test_many_websockets_at_once_and_requests_beside_them(kit):
    async def one(client, port, number):
        async with websocket(kit, client, f'ws://127.0.0.1:{port}/') as session:
            for count in range(5):
                await session.send_text(f'{number} {count}')
                assert await session.receive_text() == f'{number} {count}'

    async with websocket_server(echo) as port, kit.talking() as (client, server, _):
        *_, answer = await asyncio.gather(
            *(one(client, port, number) for number in range(10)), client.get(server.url))
        assert answer.text == 'ok'


@pytest.mark.parametrize('scheme', ['ws', 'wss'])
@pytest.mark.parametrize('kind', ['http', 'socks5'])
@check
async def test_a_websocket_through_a_proxy(kit, kind, scheme):
    context = server_context() if scheme == 'wss' else None
    async with websocket_server(echo, context) as port:
        proxy = HttpProxy(port) if kind == 'http' else Socks5Proxy(port)

        async def talk(client):
            async with websocket(kit, client, f'{scheme}://name.test/') as session:
                await session.send_text('hello')
                assert await session.receive_text() == 'hello'

        async with through(kit, proxy, scheme=kind) as (client, _):
            if kind == 'http' and scheme == 'ws' and kit.differs(
                    'websocket-proxy', stock=True, ours=False):
                await kit.failure('ConnectError', talk(client))
            elif kind == 'socks5' and scheme == 'wss' and not kit.is_ours and (
                    kit.library == 'httpx'):
                # Classic httpx makes no TLS there, so the server hangs up.
                await kit.failure('RemoteProtocolError', talk(client))
            else:
                await talk(client)


SWITCHING = (b'HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: chat\r\n\r\n')
UPGRADING = {'connection': 'upgrade', 'upgrade': 'chat'}


@check
async def test_the_network_stream_after_101(kit):
    async def script(peer):
        await peer.read_head()
        await peer.send(SWITCHING + b'leading')
        assert await peer.read(5) == b'hello'
        await peer.send(b'more')
        script.left = await peer.closed()

    async with kit.talking(script) as (client, server, _):
        async with client.stream('GET', server.url, headers=UPGRADING) as answer:
            assert (answer.status_code, answer.reason_phrase) == (101, 'Switching Protocols')
            stream = answer.extensions['network_stream']
            assert await stream.read(3) == b'lea'
            assert await stream.read(100) == b'ding'
            await stream.write(b'hello')
            assert await stream.read(100, timeout=60) == b'more'
            await stream.aclose()
        await until(lambda: hasattr(script, 'left'))
        assert script.left == b''


@check
async def test_tls_after_101(kit):
    async with kit.talking(SWITCHING) as (client, server, _):
        async with client.stream('GET', server.url, headers=UPGRADING) as answer:
            stream = answer.extensions['network_stream']
            # Stock makes its own TLS by this, in each check with https.
            if kit.differs('start-tls', stock=False, ours=True):
                with pytest.raises(NotImplementedError, match='TLS'):
                    await stream.start_tls(trusting(), server_hostname='127.0.0.1')


@on_clock
async def test_the_network_stream_fails_as_the_core_s_does(kit):
    goes_on = asyncio.Event()

    async def script(peer):
        await peer.read_head()
        await peer.send(SWITCHING)
        await goes_on.wait()
        if script.resets:
            peer.reset()

    async with kit.talking(script) as (client, server, _):
        script.resets = False
        async with client.stream('GET', server.url, headers=UPGRADING) as answer:
            stream = answer.extensions['network_stream']
            task = asyncio.ensure_future(stream.read(100, timeout=2))
            await settling()
            await passing(1.99)
            assert not task.done()
            await passing(0.02)
            await until(task.done)
            with pytest.raises(kit.core.ReadTimeout):
                await task
        script.resets = True
        async with client.stream('GET', server.url, headers=UPGRADING) as answer:
            stream = answer.extensions['network_stream']
            goes_on.set()
            with pytest.raises(kit.core.ReadError):
                await stream.read(100)
        script.resets = False
        async with client.stream('GET', server.url, headers=UPGRADING) as answer:
            assert await answer.extensions['network_stream'].read(100) == b''


# -------------------------------------------------------------------------------- loops and others


all_kits = pytest.mark.parametrize(
    'kit', [kit for kits in KITS.values() for kit in kits], ids=repr)


@pytest.mark.parametrize('loop_name', LOOPS)
@all_kits
def test_loops_after_each_other(kit, loop_name):
    async def ask(transport, url):
        # Not `async with`, which would close the transport.
        client = kit.http.AsyncClient(transport=transport)
        return (await client.get(url)).text

    def ask_in_new_loops(url):
        transport = kit.transport()
        for _ in range(3):
            with asyncio.Runner(loop_factory=new_loop) as runner:
                assert runner.run(ask(transport, url)) == 'ok'

    # uvloop closes all connections when it is closed, and warns of each. The loop of these tests
    # makes an error of that.
    new_loop = (uvloop.new_event_loop if loop_name == 'uvloop' and not kit.is_ours
                else LOOPS[loop_name])
    fails = loop_name == 'asyncio' and kit.differs('loops', stock=True, ours=False)
    with nothing_left() if kit.is_ours else leniently():
        with ThreadServer(AnsweringInThreads()) as server:
            with pytest.raises(RuntimeError) if fails else contextlib.nullcontext():
                ask_in_new_loops(server.url)


@all_kits
def test_trio(kit):
    async def ask(url):
        async with kit.client() as client:
            return (await client.get(url)).text

    with ThreadServer(AnsweringInThreads()) as server:
        if kit.differs('trio', stock=False, ours=True):
            with pytest.raises(RuntimeError, match='asyncio'):
                trio.run(ask, server.url)
        else:
            with leniently():
                assert trio.run(ask, server.url) == 'ok'


@pytest.mark.parametrize('library', KITS)
def test_the_modules_import_one_library_each(library):
    other = {'httpx2': 'httpx', 'httpx': 'httpx2'}[library]
    script = f'import lowhaio_{library}, sys; assert {other!r} not in sys.modules'
    path = ':'.join([str(ROOT), str(ROOT / 'layers' / library)])
    subprocess.run([sys.executable, '-c', script], check=True, timeout=60,
                   env={'PYTHONPATH': path})


def test_the_arguments_are_those_of_stock():
    for stock, ours in KITS.values():
        expected = inspect.signature(stock.Transport).parameters
        given = inspect.signature(ours.Transport).parameters
        assert [(each.name, each.default) for each in expected.values()
                if each.name != 'limits'] == [
                    (each.name, each.default) for each in given.values()
                    if each.name != 'limits']
        assert given['limits'].default == expected['limits'].default
        assert list(given).index('limits') == list(expected).index('limits')


def test_each_difference_is_tried():
    tree = ast.parse(pathlib.Path(__file__).read_text(encoding='utf-8'))
    tried = {node.args[0].value for node in ast.walk(tree)
             if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
             and node.func.attr == 'differs'}
    assert tried == set(DIFFERENCES)


def test_the_readme_says_what_is_seen_here():
    text = (ROOT / 'layers' / 'httpx2' / 'README.md').read_text(encoding='utf-8')
    flat = ' '.join(text.split())
    assert [phrase for phrase in SAID.values() if phrase not in flat] == []
    assert SAID.keys() <= DIFFERENCES.keys()
    table = text.partition('## What differs')[2].partition('\n\n| there | here | why |')[2]
    rows = table.partition('\n\n')[0].splitlines()[2:]
    assert [row for row in rows if not any(phrase in row for phrase in SAID.values())] == []
