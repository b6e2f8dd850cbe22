"""Tests of lowhaio_httpx2 and lowhaio_httpx: what servers and proxies receive, and what is raised.

Each test is run with both packages.
"""

import asyncio
import base64
import contextlib
import gc
import inspect
import os
import pathlib
import re
import select
import socket
import ssl
import stat
import threading
import types

import httpcore
import httpcore2
import httpx
import httpx2
import pytest
import truststore

import lowhaio
import lowhaio_httpx
import lowhaio_httpx2
from tests.harness import (
    BLOCKING,
    CANCELLED,
    LOOPS,
    OK,
    SWITCHING,
    Answering,
    AnsweringInThreads,
    Peer,
    Sending,
    Server,
    Streams,
    ThreadServer,
    authority,
    bound_to,
    certified,
    chunked,
    deaf_server,
    ends_after,
    forever,
    head,
    holding,
    internet,
    nothing_left,
    measured,
    on_clock,
    on_loops,
    on_one_loop,
    open_descriptors,
    passing,
    python_blocks,
    response,
    run_block,
    server_context,
    trusting,
    turns,
    unix_streams,
    until,
    value,
    values_of,
    with_length,
)

KITS = [
    types.SimpleNamespace(httpx=httpx2, core=httpcore2, layer=lowhaio_httpx2),
    types.SimpleNamespace(httpx=httpx, core=httpcore, layer=lowhaio_httpx),
]
both = pytest.mark.parametrize('kit', KITS, ids=['httpx2', 'httpx'])


@contextlib.asynccontextmanager
async def client_of(kit, timeout=60, **options):
    """A client with a transport of its own, which has these options."""
    transport = kit.layer.LowhaioTransport(**{'verify': trusting(), **options})
    async with kit.httpx.AsyncClient(transport=transport, timeout=timeout) as client:
        yield client


async def chunks_of(*chunks):
    for chunk in chunks:
        yield chunk


def posted(kit, client, url, body, headers=()):
    """POST what `body()` yields. Around a generator that is `content`, httpx has one of its own,
    and does not close the inner one."""
    class Stream(kit.httpx.AsyncByteStream):
        def __aiter__(self):
            return body()

    headers = dict(headers) or {'transfer-encoding': 'chunked'}
    return client.send(kit.httpx.Request(
        'POST', url, headers={'host': 'a', **headers}, stream=Stream(),
        extensions={'timeout': client.timeout.as_dict()}))


async def raised(kind, awaitable):
    """The exception, which must be exactly of that class, and come from one of lowhaio."""
    with pytest.raises(kind) as caught:
        await awaitable
    assert type(caught.value) is kind
    assert isinstance(caught.value.__cause__, lowhaio.HttpError)
    assert str(caught.value) == str(caught.value.__cause__)
    return caught.value


# ------------------------------------------------------------------------ requests, responses


@both
@on_loops
async def test_a_request_is_sent_as_it_is_and_its_response_is_returned(kit):
    script = Answering(head(b'Set-Cookie: a', b'X-One: 1', b'set-cookie: b', b'content-length: 2',
                            start=b'HTTP/1.1 404 Nothing here') + b'ok', OK)
    async with Server(script) as server, client_of(kit) as client:
        got = await client.get(
            server.url.replace('://', '://user:password@') + 'a/%7e;b?c=[d]|e&f=%20#g',
            headers=[('X-B', '1'), ('x-a', '2'), ('X-B', '3')])
        again = await client.get(server.url)
    assert (got.status_code, got.reason_phrase, got.http_version, got.content) == (
        404, 'Nothing here', 'HTTP/1.1', b'ok')
    assert got.headers.raw == [(b'set-cookie', b'a'), (b'x-one', b'1'), (b'set-cookie', b'b'),
                               (b'content-length', b'2')]
    assert again.headers.raw == [(b'content-length', b'2')]
    sent = script.heads[0]
    target = got.request.url.raw_path
    assert b'|' in target
    assert sent.startswith(b'GET %b HTTP/1.1\r\nHost: 127.0.0.1:' % target)
    assert re.findall(rb'(?i)(x-.): (.)', sent) == [(b'X-B', b'1'), (b'x-a', b'2'), (b'X-B', b'3')]
    assert script.connections == [0, 0]
    assert value(sent, b'authorization') == b'Basic dXNlcjpwYXNzd29yZA=='
    assert b'@' not in sent
    stream = got.extensions['network_stream']
    assert stream.get_extra_info('server_addr') == ('127.0.0.1', server.port)
    assert stream.get_extra_info('client_addr')[0] == '127.0.0.1'
    assert stream.get_extra_info('ssl_object') is None
    assert stream.get_extra_info('socket') is None


@both
@on_one_loop
async def test_the_target_is_the_one_of_the_extension(kit):
    script = Answering(OK)
    async with Server(script) as server, client_of(kit) as client:
        await client.request('OPTIONS', server.url, extensions={'target': b'*'})
        await client.get(server.url, extensions={'target': '/[a]'})
        await client.get(server.url + '?q', extensions={})
        await raised(kit.httpx.LocalProtocolError, client.get(
            server.url, extensions={'target': b''}))
    assert script.lines == ['OPTIONS *', 'GET /[a]', 'GET /?q']


@both
@on_one_loop
async def test_a_url_of_websockets_is_one_of_http(kit):
    script = Answering(OK)
    async with Server(script) as server, client_of(kit) as client:
        await client.get(server.url.replace('http:', 'ws:'))
    assert script.lines == ['GET /']


CONTENT = {
    'none': ({}, b'', None, None),
    'bytes': ({'content': b'content'}, b'content', b'7', None),
    'none with POST': ({'content': b''}, b'', b'0', None),
    'chunks': ({'content': lambda: chunks_of(b'a' * 17, b'', b'b')},
               b'11\r\n' + b'a' * 17 + b'\r\n1\r\nb\r\n0\r\n\r\n', None, b'chunked'),
    'no chunks': ({'content': lambda: chunks_of()}, b'0\r\n\r\n', None, b'chunked'),
    'chunks of a known length': (
        {'content': lambda: chunks_of(b'ab', b'c'), 'headers': {'Content-Length': '3'}},
        b'abc', b'3', None),
    'coded bytes': ({'content': b'ab', 'headers': {'Transfer-Encoding': 'chunked'}},
                    b'2\r\nab\r\n0\r\n\r\n', None, b'chunked'),
    'coded and empty': ({'content': b'', 'headers': {'Transfer-Encoding': 'chunked'}},
                        b'0\r\n\r\n', None, b'chunked'),
    'both fields': ({'content': b'ab', 'headers': {
        'Content-Length': '2', 'Transfer-Encoding': 'chunked'}},
        b'2\r\nab\r\n0\r\n\r\n', None, b'chunked'),
}


@both
@on_one_loop
async def test_content_is_sent_by_its_length_or_coded(kit):
    async with Server(script := Answering(OK)) as server, client_of(kit) as client:
        for name, (options, body, length, coding) in CONTENT.items():
            options = {key: option() if callable(option) else option
                       for key, option in options.items()}
            await client.request('POST' if name != 'none' else 'GET', server.url, **options)
            assert script.bodies[-1] == body, name
            assert value(script.heads[-1], b'content-length') == length, name
            assert value(script.heads[-1], b'transfer-encoding') == coding, name
        await client.post(server.url, files={'file': b'content'}, data={'a': 'b'})
        assert b'filename="upload"\r\n' in script.bodies[-1]
        # Its own iterator has no end to be closed.
        class Stream(kit.httpx.AsyncByteStream):
            left = 3

            def __aiter__(self):
                return self

            async def __anext__(self):
                self.left -= 1
                if not self.left:
                    raise StopAsyncIteration
                return b'%d' % self.left

        for length in None, 2:
            headers = {'transfer-encoding': 'chunked'} if length is None else {
                'content-length': '2'}
            await client.send(kit.httpx.Request('POST', server.url, headers={
                'host': 'a', **headers}, stream=Stream()))
        assert script.bodies[-2:] == [b'1\r\n2\r\n1\r\n1\r\n0\r\n\r\n', b'21']
    assert set(script.connections) == {0}


OWN = KeyError('its own')


@both
@pytest.mark.parametrize('headers', [{}, {'content-length': '9'}], ids=['coded', 'length'])
@on_loops
async def test_an_exception_of_the_content_comes_out_as_it_is(kit, headers):
    why = ValueError('why')

    async def failing():
        try:
            yield b'a'
            raise OWN from why
        finally:
            closed.append(asyncio.current_task())

    closed = []
    limits = kit.httpx.Limits(max_connections=1)
    async with Server(Peer.closed) as server, client_of(kit, limits=limits) as client:
        for _ in range(2):
            with pytest.raises(KeyError) as caught:
                await posted(kit, client, server.url, failing, headers)
            assert caught.value is OWN
            assert caught.value.__cause__ is why
            OWN.__traceback__ = None
    assert closed == [asyncio.current_task()] * 2


@both
@pytest.mark.parametrize('headers', [{}, {'content-length': str(2 * len(BLOCKING))}],
                         ids=['coded', 'length'])
@on_one_loop
async def test_content_is_closed_when_the_response_comes_first(kit, headers):
    async with Server(holding(response(413))) as server, client_of(kit) as client:
        for chunk in b'a', BLOCKING:
            sending = Sending(chunk, forever)
            got = await posted(kit, client, server.url, sending, headers)
            assert got.status_code == 413
            assert sending.events[1:] == [True, 'cleaned up']


@both
@on_loops
async def test_the_reading_of_a_response_goes_on_with_the_sending(kit):
    async def script(peer):
        await peer.read_head()
        await peer.send(head(b'transfer-encoding: chunked'))
        for _ in range(2):
            await peer.reader.readline()
            line = await peer.reader.readline()
            await peer.send(b'%x\r\n%b\r\n' % (len(line.strip()), line.strip()))
        await peer.closed()

    async def content():
        for chunk in b'one', b'two':
            yield chunk
            await until(lambda: got and got[-1] == chunk)  # noqa: B023
        raise OWN

    got = []
    async with Server(script) as server, client_of(kit) as client:
        with pytest.raises(KeyError) as caught:
            async with client.stream('POST', server.url, content=content()) as streamed:
                async for chunk in streamed.aiter_raw():
                    got.append(chunk)
    assert got == [b'one', b'two']
    assert caught.value is OWN
    OWN.__traceback__ = None


@both
@on_one_loop
async def test_a_wrong_length_is_an_error_of_this_side(kit):
    """The stock transport raises h11's own error for bytes that are too few, and reads on."""
    messages = {
        '2': 'the request body: the body yielded more than its content-length of 2',
        '4': 'the request body: the body ended 1 bytes short of its content-length of 4'}
    async with Server(Answering(OK)) as server, client_of(kit) as client:
        for length, message in messages.items():
            headers = {'content-length': length}
            for request in (client.post(server.url, content=b'abc', headers=headers),
                            posted(kit, client, server.url, lambda: chunks_of(b'abc'), headers)):
                error = await raised(kit.httpx.LocalProtocolError, request)
                assert message in str(error)
        assert (await client.get(server.url)).content == b'ok'


# ---------------------------------------------------------------------------------- streams


@both
@on_loops
async def test_a_stream_is_read_chunk_by_chunk_and_ends_at_once(kit):
    goes_on = asyncio.Event()

    async def script(peer):
        while True:
            await peer.read_head()
            await peer.send(chunked(b'3\r\none\r\n'))
            await goes_on.wait()
            await peer.send(b'3\r\ntwo\r\n0\r\n\r\n')

    got = []
    async with Server(script) as server, client_of(kit) as client:
        for _ in range(2):
            async with client.stream('GET', server.url) as streamed:
                async for chunk in streamed.aiter_raw():
                    got.append(chunk)
                    goes_on.set()
        assert len(server.peers) == 1
    assert got == [b'one', b'two'] * 2 or b''.join(got) == b'onetwo' * 2


@both
@on_one_loop
async def test_what_is_closed_early_keeps_its_connection_if_the_rest_is_there(kit):
    async def script(peer):
        for body in b'x' * 10, b'y' * 1000, b'last':
            await peer.read_head()
            await peer.send(head(b'content-length: %d' % len(body)), body)

    async with Server(script) as server, client_of(kit) as client:
        async with client.stream('GET', server.url) as streamed:
            await turns(20)
        with pytest.raises(kit.httpx.StreamClosed):
            await streamed.aread()
        async with client.stream('GET', server.url) as streamed:
            await turns(20)
        assert (await client.get(server.url)).content == b'last'
        assert len(server.peers) == 1
    transport = kit.layer.LowhaioTransport(verify=trusting())
    large = head(b'content-length: 1000000000') + b'a'
    async with Server(holding(large)) as server, transport:
        for _ in range(2):
            got = await transport.handle_async_request(kit.httpx.Request('GET', server.url))
            assert await anext(aiter(got.stream)) == b'a'
            await got.stream.aclose()
            await got.stream.aclose()
            await raised(kit.httpx.ReadError, anext(aiter(got.stream)))
        assert len(server.peers) == 2


@both
@on_one_loop
async def test_a_response_that_is_never_read_gives_its_place_back(kit):
    """The stock transport loses it."""
    limits = kit.httpx.Limits(max_connections=1)
    async with Server(holding(head(b'content-length: 9'))) as server, client_of(
            kit, limits=limits) as client:
        for _ in range(2):
            got = await client.send(client.build_request('GET', server.url), stream=True)
            assert got.status_code == 200
            del got
            gc.collect()


@both
@on_one_loop
async def test_the_trace_tells_of_what_is_known(kit):
    names = []

    async def trace(name, info):
        names.append(name)
        if info == failing:
            raise OWN
        infos.append(info)

    infos = []
    failing = None
    closing = with_length(b'connection: close')
    cut = closing[:-1]
    async with Server(Answering(closing, cut, closing, close_after=True)) as server:
        async with client_of(kit) as client:
            got = await client.get(server.url, extensions={'trace': trace})
            assert got.content == b'ok'
            assert infos[0] == {
                'return_value': (b'HTTP/1.1', 200, b'OK', got.headers.raw)}
            await got.stream.aclose()
            body = [f'http11.receive_response_body.{name}' for name in ('started', 'complete')]
            closed = [f'http11.response_closed.{name}' for name in ('started', 'complete')]
            whole = ['http11.receive_response_headers.complete', *body, *closed]
            assert names == whole
            names.clear()
            with pytest.raises(kit.httpx.RemoteProtocolError):
                await client.get(server.url, extensions={'trace': trace})
            assert names == [*whole[:2], 'http11.receive_response_body.failed', *closed]
            failing = infos[0]
            with pytest.raises(KeyError) as caught:
                await client.get(server.url, extensions={'trace': trace})
            assert caught.value is OWN
            OWN.__traceback__ = None


# ----------------------------------------------------------------------------------- errors


async def reset(peer):
    await peer.read_head()
    peer.reset()


async def reset_in_body(peer):
    await peer.read_head()
    await peer.send(head(b'content-length: 3') + b'a')
    await turns(20)
    peer.reset()


RESPONSES = {
    'no answer': (Answering(None), 'RemoteProtocolError'),
    'nonsense': (Answering(b'nonsense\r\n\r\n'), 'RemoteProtocolError'),
    'a body that is cut off': (
        Answering(head(b'content-length: 3') + b'a', close_after=True), 'RemoteProtocolError'),
    'chunks that are cut off': (
        Answering(chunked(b'3\r\na'), close_after=True), 'RemoteProtocolError'),
    'nonsense for a chunk': (Answering(chunked(b'x\r\n')), 'RemoteProtocolError'),
    'a long head': (Answering(head(b'a: ' + b'x' * 100 * 1024)), 'RemoteProtocolError'),
    'reset': (reset, 'ReadError'),
    'reset in the body': (reset_in_body, 'ReadError'),
}


@both
@on_one_loop
async def test_what_the_server_does_wrong_has_its_class(kit):
    for name, (script, kind) in RESPONSES.items():
        async with Server(script) as server, client_of(kit) as client:
            error = await raised(getattr(kit.httpx, kind), client.get(server.url))
            assert error.request.url == server.url, name
            assert str(error).startswith(f'GET {server.origin} (peer '), name


@both
@on_one_loop
async def test_a_reset_while_sending_is_a_write_error(kit):
    async with Server(reset) as server, client_of(kit) as client:
        error = await raised(kit.httpx.WriteError, client.post(server.url, content=BLOCKING))
        assert 'sending the request' in str(error)


@both
@on_loops
async def test_an_end_of_tls_without_its_close_notify_is_no_end_of_a_body(kit):
    async def script(peer):
        await peer.read_head()
        await peer.send(head() + b'a')
        peer.writer.transport.abort()

    async with Server(script, server_context()) as server, client_of(kit) as client:
        error = await raised(kit.httpx.RemoteProtocolError, client.get(server.url))
        assert isinstance(error.__cause__.__cause__, ssl.SSLEOFError)


@both
@on_one_loop
async def test_a_second_reader_of_a_response_is_refused(kit):
    transport = kit.layer.LowhaioTransport(verify=trusting())
    async with Server(holding(head(b'content-length: 3'))) as server, transport:
        got = await transport.handle_async_request(kit.httpx.Request('GET', server.url))
        first = asyncio.ensure_future(anext(got.stream))
        await turns(5)
        error = await raised(kit.httpx.LocalProtocolError, anext(got.stream))
        assert 'is being read by another task' in str(error)
        await got.stream.aclose()
        await raised(kit.httpx.ReadError, first)


@both
@on_one_loop
async def test_a_head_may_be_long(kit):
    async with Server(Answering(head(b'a: ' + b'x' * 99_000, b'content-length: 0'))) as server:
        async with client_of(kit) as client:
            assert len((await client.get(server.url)).headers['a']) == 99_000


REFUSED = {
    'a field': ('/', {'headers': {'a': 'b\nc'}}, 'refused: headers must not have control'),
    'a method': ('/', {'method': 'A B'}, 'refused: method must be a token'),
    'a tunnel': ('/', {'method': 'CONNECT'}, 'refused: method must not be CONNECT'),
    'a target': ('/', {'extensions': {'target': b'a b'}}, 'refused: target'),
    'a coding': ('/', {'headers': {'transfer-encoding': 'identity'}}, 'refused: headers'),
}


@both
@on_one_loop
async def test_what_can_not_be_sent_is_refused(kit):
    async with client_of(kit) as client:
        for name, (path, options, message) in REFUSED.items():
            error = await raised(kit.httpx.LocalProtocolError, client.request(
                **{'method': 'GET', 'url': f'http://127.0.0.1:1{path}', **options}))
            assert message in str(error), name
        for url, message in ('ftp://127.0.0.1/', "unsupported protocol 'ftp://'."), (
                '/path', "missing an 'http://' or 'https://' protocol."):
            with pytest.raises(kit.httpx.UnsupportedProtocol) as caught:
                await client.get(url)
            assert message in str(caught.value)


@both
@on_one_loop
async def test_a_connection_that_can_not_be_made_is_a_connect_error(kit):
    with bound_to('127.0.0.1')[0] as sock:
        async with client_of(kit) as client:
            error = await raised(kit.httpx.ConnectError, client.get(
                f'http://127.0.0.1:{sock.getsockname()[1]}/'))
    assert 'ConnectionRefusedError' in str(error)


@both
@on_clock
async def test_each_time_has_its_class(kit):
    """A time for connecting is for the TLS handshake too, and the one for writing not for the
    time that the content takes."""
    times = dict.fromkeys(('connect', 'read', 'write', 'pool'), 100.0)

    async def slowly():
        await passing(200)
        yield b'a'

    async def late(seconds, kind, awaitable, has_begun=lambda: True):
        passed, task = await measured(awaitable, has_begun)
        # The kernel may make room later.
        assert passed == seconds or kind == 'WriteTimeout' and seconds < passed < 60
        error = await raised(getattr(kit.httpx, kind), task)
        assert isinstance(error.__cause__.__cause__, TimeoutError)

    limits = kit.httpx.Limits(max_connections=1)
    async with client_of(kit, limits=limits) as client, Server(holding()) as silent:
        def timeout(**own):
            return kit.httpx.Timeout(**{**times, **own})

        with deaf_server() as deaf:
            await late(3, 'ConnectTimeout', client.get(
                deaf.url.replace('http:', 'https:'), timeout=timeout(connect=3)))
            await late(5, 'WriteTimeout', client.post(
                deaf.url, content=BLOCKING, timeout=timeout(write=5)))
        await late(4, 'ReadTimeout', client.get(silent.url, timeout=timeout(read=4)),
                   lambda: silent.peers)
        async with Server(holding(head(b'content-length: 9'), b'ab')) as server:
            async with client.stream('GET', server.url, timeout=timeout(read=4)) as streamed:
                await late(4, 'ReadTimeout', streamed.aread())
        async with Server(holding(head(b'content-length: 9'), b'ab')) as server:
            async with client.stream('GET', server.url, timeout=None):
                await late(2, 'PoolTimeout', client.get(server.url, timeout=timeout(pool=2)))
        async with Server(Answering(OK)) as server:
            task = asyncio.ensure_future(client.post(
                server.url, content=slowly(), timeout=timeout(write=5)))
            await until(task.done)
            assert (await task).content == b'ok'


@both
@on_clock
async def test_without_times_it_waits_for_ever(kit):
    transport = kit.layer.LowhaioTransport(verify=trusting())
    async with Server(holding()) as server, transport:
        for times in ({}, {'read': None, 'connect': 3}, {'read': float('inf')}):
            task = asyncio.ensure_future(transport.handle_async_request(
                kit.httpx.Request('GET', server.url, extensions=times and {'timeout': times})))
            await until(lambda: server.peers)
            await passing(100_000)
            assert not task.done()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


@both
@on_loops
async def test_a_request_that_is_cancelled_leaves_nothing(kit):
    """The stock transport leaves a connection open that was in its handshake."""
    with deaf_server() as deaf:
        async with client_of(kit) as client:
            before = open_descriptors()
            task = asyncio.ensure_future(client.get(deaf.url.replace('http:', 'https:')))
            await until(lambda: open_descriptors() - before)
            await turns(10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert open_descriptors() == before
    assert task.cancelling() == 1


@both
@on_one_loop
async def test_a_request_that_is_cancelled_ends_its_content(kit):
    sending = Sending(b'a', forever)
    async with Server(holding()) as server, client_of(kit) as client:
        task = asyncio.ensure_future(posted(kit, client, server.url, sending))
        await until(lambda: sending.yielded)
        await turns(10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert sending.events == CANCELLED


# ---------------------------------------------------------------------------------- options


@both
@on_one_loop
async def test_limits_are_those_of_the_pool(kit):
    def limits(**options):
        return kit.httpx.Limits(**options)

    for chosen, connections in (
            (limits(), 2), (limits(max_connections=1), 1),
            (limits(max_keepalive_connections=0), 4), (limits(keepalive_expiry=0), 4),
            (limits(keepalive_expiry=None), 2)):
        async with Server(Answering(OK)) as server, client_of(kit, limits=chosen) as client:
            for _ in range(2):
                await asyncio.gather(client.get(server.url), client.get(server.url))
            assert len(server.peers) == connections, chosen
    with pytest.raises(ValueError, match='max_connections must be a number, 1 or more'):
        kit.layer.LowhaioTransport(verify=trusting(), limits=limits(max_connections=0))


@both
@on_clock
async def test_an_idle_connection_is_kept_for_its_time(kit):
    for expiry, is_kept in (5, False), (100, True), (None, True):
        limits = kit.httpx.Limits(keepalive_expiry=expiry)
        async with Server(Answering(OK)) as server, client_of(kit, limits=limits) as client:
            await client.get(server.url)
            await passing(10)
            await client.get(server.url)
            assert len(server.peers) == 1 if is_kept else 2


@both
@on_loops
async def test_tls_is_made_as_the_context_says(kit):
    async def script(peer):
        protocols.append(peer.writer.get_extra_info('ssl_object').selected_alpn_protocol())
        await Answering(OK)(peer)

    protocols = []
    context = certified('127.0.0.1', 'name.test')
    context.set_alpn_protocols(['h2', 'http/1.1'])
    async with Server(script, context) as server:
        for verify in trusting(), False:
            async with client_of(kit, verify=verify) as client:
                got = await client.get(server.url)
        assert protocols == ['http/1.1', 'http/1.1']
        connection = got.extensions['network_stream'].get_extra_info('ssl_object')
        assert connection.version() == 'TLSv1.3'
        assert connection.cipher()[1] == 'TLSv1.3'
        certificate = connection.getpeercert(binary_form=True)
        assert b'name.test' in certificate
        with pytest.raises(NotImplementedError, match='binary_form=True'):
            connection.getpeercert()
        async with client_of(kit) as client:
            await client.get(server.url, extensions={'sni_hostname': 'name.test'})
            error = await raised(kit.httpx.ConnectError, client.get(
                server.url, extensions={'sni_hostname': 'other.test'}))
            assert "certificate is not valid for 'other.test'" in str(error)
        async with client_of(kit, verify=True) as client:
            error = await raised(kit.httpx.ConnectError, client.get(server.url))
            assert isinstance(error.__cause__, lowhaio.HttpTlsError)


@both
def test_wrong_options_fail_at_once(kit, tmp_path):
    make = kit.layer.LowhaioTransport
    with pytest.warns(DeprecationWarning, match='verify=<str>'), pytest.raises(FileNotFoundError):
        make(verify=str(tmp_path / 'none.pem'))
    with pytest.raises(ValueError, match='http2=True needs http1=True'):
        make(verify=trusting(), http1=False, http2=True)
    make(verify=trusting(), http2=True)
    with pytest.raises(ValueError, match='the proxy must be reached without TLS'):
        make(verify=trusting(), proxy='https://127.0.0.1:1')
    for scheme in 'http', 'socks5':
        with pytest.raises(ValueError, match=f'no ssl_context, because its URL is {scheme}://'):
            make(verify=trusting(), proxy=kit.httpx.Proxy(
                f'{scheme}://127.0.0.1:1', ssl_context=trusting()))
    with pytest.raises(ValueError, match='at most 255 bytes each'):
        make(verify=trusting(), proxy=f'socks5://a:{"b" * 256}@127.0.0.1:1')
    with pytest.raises(ValueError, match='Unknown scheme'):
        make(verify=trusting(), proxy='ftp://127.0.0.1:1')


@both
@on_one_loop
async def test_no_session_is_resumed_with_truststore(kit):
    """It verifies the chain that has come in the handshake. When a session is resumed, none comes,
    and some systems refuse that."""
    async def script(peer):
        reused.append(peer.writer.get_extra_info('ssl_object').session_reused)
        await Answering(OK)(peer)

    system = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    system.load_verify_locations(cadata=authority().cert_pem.bytes().decode())
    limits = kit.httpx.Limits(keepalive_expiry=0)
    for context, expected in (trusting(), [False, True]), (system, [False, False]):
        reused = []
        async with Server(script, server_context()) as server, client_of(
                kit, verify=context, limits=limits) as client:
            for _ in range(2):
                assert (await client.get(server.url)).content == b'ok'
        assert reused == expected


@both
@on_loops
async def test_all_connections_lead_to_the_unix_socket(kit, tmp_path):
    streams = Streams()
    async with unix_streams(streams, tmp_path), client_of(
            kit, uds=str(tmp_path / 's'), local_address='127.0.0.1',
            socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 5000)]) as client:
        assert (await client.get('http://name.test/a')).content == b'ok'
        await client.aclose()
        await streams.all_ended()
    async with client_of(kit, uds=str(tmp_path / 'none')) as client:
        error = await raised(kit.httpx.ConnectError, client.get('http://name.test/'))
        assert 'FileNotFoundError' in str(error)


def sockets_to(port):
    """Copies of the sockets of this process that lead there."""
    found = []
    for descriptor in map(int, open_descriptors()):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                with socket.socket(fileno=os.dup(descriptor)) as sock:
                    if sock.family == socket.AF_INET and sock.getpeername()[1] == port:
                        found.append(sock.dup())
    return found


def socket_to(port):
    [sock] = sockets_to(port)
    return sock


@both
@on_one_loop
async def test_sockets_have_the_options_and_the_local_address(kit):
    option = socket.SOL_SOCKET, socket.SO_KEEPALIVE
    async with Server(Answering(OK)) as server:
        async with client_of(
                kit, socket_options=iter([(*option, 0)]), local_address='0.0.0.0') as client:
            await client.get(server.url)
            with socket_to(server.port) as sock:
                assert not sock.getsockopt(*option)
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        async with client_of(kit, local_address='::1') as client:
            error = await raised(kit.httpx.ConnectError, client.get(server.url))
            assert 'connecting failed: 127.0.0.1: ' in str(error)
        async with client_of(kit, socket_options=[(socket.SOL_SOCKET, 999_999, 1)]) as client:
            await raised(kit.httpx.ConnectError, client.get(server.url))


@both
@on_clock
async def test_connecting_is_tried_again_after_pauses(kit):
    async with client_of(kit, retries=4) as client:
        with bound_to('127.0.0.1')[0] as sock:
            url = f'http://127.0.0.1:{sock.getsockname()[1]}/'
            seconds, task = await measured(client.get(url))
            await raised(kit.httpx.ConnectError, task)
            assert seconds == 0 + 0.5 + 1 + 2
            task = asyncio.ensure_future(client.get(url))
            await passing(0.1)
            sock.listen()
            sock.setblocking(False)
            await passing(0.5)
            with sock.accept()[0] as accepted:
                accepted.setblocking(False)
                await until(lambda: select.select([accepted], [], [], 0)[0])
                accepted.send(OK)
                assert (await task).content == b'ok'
        script = Answering(None)
        async with Server(script) as server:
            await raised(kit.httpx.RemoteProtocolError, client.get(server.url))
        assert len(script.heads) == 1
        seconds, task = await measured(client.get(url, headers={'a': 'b\nc'}))
        await raised(kit.httpx.LocalProtocolError, task)
        assert seconds == 0
    script = Answering(response(407))
    async with Server(script) as server, client_of(kit, retries=3, proxy=server.url) as client:
        await raised(kit.httpx.ProxyError, client.get('https://name.test/'))
    assert len(script.heads) == 1


# ------------------------------------------------------------------------------------ loops


@both
def test_each_loop_has_its_pool(kit):
    async def use(transport, url, is_closing):
        client = kit.httpx.AsyncClient(transport=transport)
        assert (await client.get(url)).content == b'ok'
        if is_closing:
            for _ in range(2):
                await transport.aclose()
            assert (await client.get(url)).content == b'ok'

    def use_in_turn(server):
        transport = kit.layer.LowhaioTransport(verify=trusting())
        for kind in LOOPS.values():
            for is_closing in False, True:
                with asyncio.Runner(loop_factory=kind) as runner:
                    runner.run(use(transport, server.url, is_closing))
                # Those of the loop before were closed when this one was used.
                socket_to(server.port).close()

    with nothing_left(), ThreadServer(AnsweringInThreads()) as server:
        use_in_turn(server)
        # The last ones are closed with the transport, which was dropped.
        gc.collect()
        assert sockets_to(server.port) == []
        assert len(server.socks) == 3 * len(LOOPS)


@both
def test_a_loop_in_another_thread_keeps_its_pool(kit):
    async def serve():
        async with Server(Answering(OK)) as server, kit.httpx.AsyncClient(
                transport=transport) as client:
            for _ in range(2):
                await client.get(server.url)
                step.wait()
                step.wait()
            peers.append(len(server.peers))

    async def close():
        await transport.aclose()

    peers = []
    step = threading.Barrier(2, timeout=60)
    with nothing_left():
        transport = kit.layer.LowhaioTransport(verify=trusting())
        thread = threading.Thread(target=asyncio.run, args=[serve()])
        thread.start()
        step.wait()
        asyncio.run(close())
        step.wait()
        step.wait()
        step.wait()
        thread.join()
    assert peers == [1]


@both
def test_it_needs_a_loop_of_asyncio(kit):
    transport = kit.layer.LowhaioTransport(verify=trusting())
    with pytest.raises(RuntimeError, match='a running event loop of asyncio.* not be used with '
                                           'trio'):
        transport.handle_async_request(kit.httpx.Request('GET', 'http://name.test')).send(None)


@both
@on_one_loop
async def test_origins_are_remembered_within_a_bound(kit):
    async with Server(Answering(OK)) as server:
        transport = kit.layer.LowhaioTransport(verify=trusting(), proxy=server.url)
        async with transport:
            for number in range(520):
                got = await transport.handle_async_request(
                    kit.httpx.Request('GET', f'http://{number}.name.test/'))
                assert b''.join([chunk async for chunk in got.stream]) == b'ok'
        assert max(len(kept) for kept in vars(transport).values() if isinstance(kept, dict)) < 513
        assert len(server.peers) == 1


# ---------------------------------------------------------------------------------- proxies


async def pump(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


def relaying(port, handshake):
    """The script of a proxy that leads everything to a port of this machine."""
    async def script(peer):
        await handshake(peer)
        reader, writer = await asyncio.open_connection('127.0.0.1', port)
        try:
            await asyncio.gather(pump(peer.reader, writer), pump(reader, peer.writer))
        finally:
            writer.close()

    return script


@both
@on_loops
async def test_a_request_for_http_goes_to_the_proxy_in_absolute_form(kit):
    script = Answering(OK)
    async with Server(script) as server:
        proxy = kit.httpx.Proxy(f'http://user:pass%20word@localhost:{server.port}',
                                headers=[('X-Proxy', '1'), ('user-agent', 'of the proxy')])
        async with client_of(kit, proxy=proxy) as client:
            got = await client.get('http://u:p@name.test:81/a?b', headers={'user-agent': 'own'})
            await client.request('OPTIONS', 'http://other.test/', extensions={'target': b'*'})
            await client.send(kit.httpx.Request('GET', 'http://other.test/', headers=None,
                                                stream=kit.httpx.ByteStream(b'')))
    assert got.content == b'ok'
    assert script.lines == ['GET http://name.test:81/a?b', 'OPTIONS *', 'GET http://other.test/']
    assert script.connections == [0, 0, 0]
    assert value(script.heads[2], b'host') == b'other.test'
    sent = script.heads[0]
    assert value(sent, b'host') == b'name.test:81'
    assert value(sent, b'x-proxy') == b'1'
    assert values_of(sent, b'user-agent') == [b'own']
    assert value(sent, b'proxy-authorization') == b'Basic ' + base64.b64encode(b'user:pass word')


@both
@on_loops
async def test_a_request_for_https_goes_through_a_tunnel(kit):
    async def handshake(peer):
        heads.append(await peer.read_head())
        await peer.send(b'HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n', b'a: b\r\n\r\n')

    heads = []
    script = Answering(OK)
    async with Server(script, server_context()) as server:
        async with Server(relaying(server.port, handshake)) as proxy:
            async with client_of(kit, proxy=kit.httpx.Proxy(
                    proxy.url, auth=('user', 'word'), headers={'accept': 'all'})) as client:
                for _ in range(2):
                    assert (await client.get('https://name.test/a?b')).content == b'ok'
                error = await raised(kit.httpx.ConnectError, client.get('https://[::1]:81/'))
                assert isinstance(error.__cause__, lowhaio.HttpTlsError)
                # A tunnel without TLS. What comes through it is none of HTTP.
                await raised(kit.httpx.RemoteProtocolError, client.get('ws://name.test/'))
    assert script.lines == ['GET /a?b'] * 2
    assert not values_of(script.heads[0], b'proxy-authorization')
    assert heads == [
        b'CONNECT %b HTTP/1.1\r\nProxy-Authorization: Basic dXNlcjp3b3Jk\r\naccept: all\r\n'
        b'Host: %b\r\n\r\n' % (target, target) for target in (
            b'name.test:443', b'[::1]:81', b'name.test:80')]


TUNNELS = {
    'refused': (response(407, b'why'), '407 Reason'),
    'without a reason': (b'HTTP/1.0 502\r\n\r\n', '502'),
    'no answer': (None, "the proxy answered b''"),
    'nonsense': (b'nonsense\r\n\r\n', "the proxy answered b'nonsense\\r\\n\\r\\n'"),
    'a long answer': (
        b'HTTP/1.1 200 ' + b'x' * 17_000, f"the proxy answered b'HTTP/1.1 200 {'x' * 47}"),
    'what the server can not have sent': (
        b'HTTP/1.1 200 OK\r\n\r\nabc', "the proxy sent b'abc' before the server"),
}


@both
@on_one_loop
async def test_a_tunnel_that_is_refused_is_a_proxy_error(kit):
    for name, (answer, message) in TUNNELS.items():
        async with Server(Answering(answer)) as server, client_of(kit, proxy=server.url) as client:
            error = await raised(kit.httpx.ProxyError, client.get('https://name.test/'))
            assert f'get_connection failed: ProxyError: {message}' in str(error), name
    with bound_to('127.0.0.1')[0] as sock:
        async with client_of(kit, proxy=f'http://127.0.0.1:{sock.getsockname()[1]}') as client:
            for scheme in 'http', 'https':
                await raised(kit.httpx.ConnectError, client.get(f'{scheme}://name.test/'))


@both
@on_clock
async def test_a_tunnel_takes_the_time_of_connecting(kit):
    async with Server(holding()) as server, client_of(kit, proxy=server.url, timeout=(
            kit.httpx.Timeout(100, connect=3))) as client:
        task = await ends_after(3, client.get('https://name.test/'), lambda: server.peers)
        await raised(kit.httpx.ConnectTimeout, task)


class Socks:
    """The handshake of a SOCKS5 proxy. It keeps what it was asked for."""

    def __init__(self, method=0, granted=0, reply=b'\x05\x00\x00\x01' + bytes(6), version=5):
        self.method, self.granted, self.reply = method, granted, reply
        self.version = version
        self.offered = []
        self.secrets = []
        self.asked = []

    async def __call__(self, peer):
        _, count = await peer.read(2)
        self.offered.append(await peer.read(count))
        await peer.send(bytes([self.version, self.method]))
        if self.method == 2:
            for _ in range(2):
                length = (await peer.read(2 if len(self.secrets) % 2 == 0 else 1))[-1]
                self.secrets.append(await peer.read(length))
            await peer.send(bytes([1, self.granted]))
        _, _, _, kind = await peer.read(4)
        length = {1: 4, 4: 16}.get(kind) or (await peer.read(1))[0]
        self.asked.append((kind, await peer.read(length), await peer.read(2)))
        await peer.send(*(self.reply[at:at + 1] for at in range(len(self.reply))))


@both
@on_loops
async def test_requests_go_through_a_socks_proxy(kit):
    bound_to_name = b'\x05\x00\x00\x03\x04name' + bytes(2)
    bound_to_ipv6 = b'\x05\x00\x00\x04' + bytes(18)
    async with Server(Answering(OK)) as http, Server(Answering(OK), server_context()) as https:
        for socks, server, url, user, asked in (
                (Socks(), http, 'http://name.test/', '', (3, b'name.test', b'\x00\x50')),
                (Socks(reply=bound_to_ipv6), http, 'http://[::1]:258/', '',
                 (4, bytes(15) + b'\x01', b'\x01\x02')),
                (Socks(2, reply=bound_to_name), https, 'https://127.0.0.1/', 'me:secret@',
                 (1, b'\x7f\x00\x00\x01', b'\x01\xbb')),
                (Socks(0), https, 'https://name.test/', 'me:secret@',
                 (3, b'name.test', b'\x01\xbb'))):
            async with Server(relaying(server.port, socks)) as proxy, client_of(
                    kit, proxy=f'socks5://{user}127.0.0.1:{proxy.port}') as client:
                for _ in range(2):
                    assert (await client.get(url)).content == b'ok'
            assert socks.asked == [asked]
            assert socks.offered == [b'\x00\x02' if user else b'\x00']
            assert socks.secrets == ([b'me', b'secret'] if socks.method else [])


REFUSALS = {
    'no SOCKS5': (Socks(version=4), '', 'the proxy does not speak SOCKS5'),
    'no name': (Socks(255), '', 'the SOCKS5 proxy wants a name and a password'),
    'what was not offered': (Socks(2), '', 'the SOCKS5 proxy wants a name and a password'),
    'another method': (Socks(255), 'a:b@', 'the SOCKS5 proxy wants another authentication'),
    'a wrong name': (Socks(2, 1), 'a:b@', 'the SOCKS5 proxy refused the name or the password'),
    'no connection': (
        Socks(reply=b'\x05\x05\x00\x01'), '', 'could not connect: connection refused'),
    'no reason': (Socks(reply=b'\x05\x63\x00\x01'), '', 'could not connect: reply 99'),
    'the end': (Socks(reply=b'\x05'), '', 'the SOCKS5 proxy closed the connection'),
}


@both
@on_one_loop
async def test_a_refusal_of_a_socks_proxy_is_a_proxy_error(kit):
    for name, (socks, user, message) in REFUSALS.items():
        async with Server(socks) as proxy, client_of(
                kit, proxy=f'socks5h://{user}127.0.0.1:{proxy.port}') as client:
            error = await raised(kit.httpx.ProxyError, client.get('http://name.test/'))
            assert message in str(error), name


# -------------------------------------------------------------------------------- after 101


@both
@on_loops
async def test_after_101_the_connection_goes_both_ways(kit):
    async def script(peer):
        # So that less fits in between.
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await peer.read_head()
        await peer.send(head(b'upgrade: chat', start=SWITCHING) + b'hello')
        await peer.send(await peer.read(4))
        last.append(await peer.read(3))
        await forever()

    last = []
    upgrade = {'connection': 'upgrade', 'upgrade': 'chat'}
    async with Server(script) as server, client_of(kit) as client:
        async with client.stream('GET', server.url, headers=upgrade) as streamed:
            stream = streamed.extensions['network_stream']
            assert [await stream.read(3), await stream.read(3, timeout=60)] == [b'hel', b'lo']
            await stream.write(b'ping', timeout=60)
            assert await stream.read(9) == b'ping'
            with pytest.raises(kit.core.ReadTimeout, match='^0.01 seconds passed$'):
                await stream.read(9, timeout=0.01)
            await stream.write(bytearray(b'end'))
            with pytest.raises(NotImplementedError, match='can not add TLS'):
                await stream.start_tls(trusting())
            with pytest.raises(kit.core.WriteTimeout):
                await stream.write(BLOCKING, timeout=0.01)
            with pytest.raises(kit.core.WriteError, match='sending the request'):
                await stream.write(b'more')
            with pytest.raises(kit.core.ReadError):
                await stream.read(9)
            await stream.aclose()
    assert last == [b'end']


@both
@on_one_loop
async def test_the_end_after_101_is_no_bytes_and_without_101_there_is_nothing(kit):
    upgrade = {'connection': 'upgrade', 'upgrade': 'chat'}
    async with Server(Answering(head(b'upgrade: chat', start=SWITCHING), close_after=True),
                      ) as server, client_of(kit) as client:
        async with client.stream('GET', server.url, headers=upgrade) as streamed:
            assert await streamed.extensions['network_stream'].read(9) == b''
    async with Server(Answering(OK)) as server, client_of(kit) as client:
        stream = (await client.get(server.url)).extensions['network_stream']
        with pytest.raises(kit.core.ReadError, match='only after 101'):
            await stream.read(9)
        with pytest.raises(kit.core.WriteError, match='only after 101'):
            await stream.write(b'a')


# ---------------------------------------------------------------------------------- clients


@pytest.fixture
def environment(monkeypatch):
    """Sets the proxies of the environment, and nothing but them."""
    def set_to(**values):
        for name in list(os.environ):
            if name.lower().endswith('_proxy'):
                monkeypatch.delenv(name)
        for name, text in values.items():
            monkeypatch.setenv(name, text)

    set_to()
    return set_to


@both
@on_one_loop
async def test_the_client_is_on_lowhaio_and_has_its_limits(kit, environment):
    async with Server(Answering(OK)) as server, kit.layer.LowhaioAsyncClient(
            verify=trusting(), limits=kit.httpx.Limits(max_connections=1), http2=True,
            base_url=server.url, headers={'a': 'b'}) as client:
        got = await asyncio.gather(client.get('/'), client.get('/'))
        assert got[0].content == b'ok'
        assert isinstance(got[0].extensions['network_stream'], kit.layer.NetworkStream)
        assert got[0].request.headers['a'] == 'b'
        assert len(server.peers) == 1


# What is in NO_PROXY, the host of the URL, and whether the request goes to the proxy. The third is
# a pair if httpx2 reads the entry in another way than httpx.
NO_PROXY = [
    ('', '127.0.0.1', True), ('*', '127.0.0.1', False), ('127.0.0.1', '127.0.0.1', False),
    ('127.0.0.2', '127.0.0.1', True), ('127.0.0.0/8', '127.0.0.1', (False, True)),
    ('127.0.0.0/x', '127.0.0.1', True), ('::1', '127.0.0.1', True),
    ('[::1]', '127.0.0.1', True), ('::/0', '127.0.0.1', True), ('localhost', 'localhost', False),
    ('LOCALHOST', 'localhost', False), ('name.test', '127.0.0.1', True),
    ('.0.1', '127.0.0.1', False),
    ('*.0.1', '127.0.0.1', False), ('.name.test', 'name.test', True),
    ('http://127.0.0.1', '127.0.0.1', False), ('[x]', '127.0.0.1', True),
    ('http://a:b', '127.0.0.1', True),
    ('name.test/path', 'name.test', True),
    ('other.test, 127.0.0.1', '127.0.0.1', False),
]


@both
@on_one_loop
async def test_the_proxies_of_the_environment_are_used(kit, environment):
    async with Server(Answering(response(200, b'proxied'))) as proxy, Server(
            Answering(OK)) as server:
        for entries, host, expected in NO_PROXY:
            if isinstance(expected, tuple):
                expected = expected[kit is KITS[1]]
            environment(HTTP_PROXY=f'127.0.0.1:{proxy.port}', NO_PROXY=entries)
            url = f'http://{host}:{server.port}/'
            async with kit.layer.LowhaioAsyncClient(verify=trusting()) as client:
                got = await client.get(url)
            assert got.content == (b'proxied' if expected else b'ok'), entries
        environment(HTTP_PROXY=proxy.url)
        mocked = kit.httpx.MockTransport(lambda request: kit.httpx.Response(200, content=b'mock'))
        for options, expected in (
                ({'mounts': {'http://': mocked}}, b'mock'),
                ({}, b'proxied'), ({'trust_env': False}, b'ok'),
                ({'mounts': {'http://127.0.0.1': None}}, b'ok'),
                ({'transport': kit.layer.LowhaioTransport(verify=trusting())}, b'ok')):
            async with kit.layer.LowhaioAsyncClient(verify=trusting(), **options) as client:
                assert (await client.get(server.url)).content == expected
        environment()
        for given in proxy.url, kit.httpx.URL(proxy.url), kit.httpx.Proxy(proxy.url):
            async with kit.layer.LowhaioAsyncClient(verify=trusting(), proxy=given) as client:
                assert (await client.get(server.url)).content == b'proxied'


@both
@on_one_loop
async def test_the_clients_for_sdks_have_their_defaults(kit):
    redirect = head(b'location: /there', b'content-length: 0', start=b'HTTP/1.1 302 Found')
    for make in kit.layer.client_for_openai, kit.layer.client_for_anthropic:
        async with Server(Answering(redirect, OK)) as server:
            async with make(verify=trusting()) as client:
                assert client.timeout == kit.httpx.Timeout(600, connect=5)
                assert (await client.get(server.url)).content == b'ok'
                with socket_to(server.port) as sock:
                    probes = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT)
                assert (probes == 5) == (make is kit.layer.client_for_anthropic)
            async with make(verify=trusting(), timeout=3, follow_redirects=False) as client:
                assert client.timeout == kit.httpx.Timeout(3)
                assert not client.follow_redirects


# ------------------------------------------------------------------------------ the READMEs


@both
def test_the_block_of_the_readme_runs_as_it_stands(
        kit, capsys, environment, monkeypatch, tmp_path):
    directory = pathlib.Path(kit.layer.__file__).parent
    [block] = python_blocks(directory / 'README.md')
    authorities = tmp_path / 'authorities.pem'
    authority().cert_pem.write_to_path(str(authorities))
    monkeypatch.setenv('SSL_CERT_FILE', str(authorities))
    with internet(Answering(response(200, b'Hello'))):
        monkeypatch.setattr(kit.layer, 'Pool', lowhaio.Pool)
        run_block(block)
    assert capsys.readouterr().out == '200 Hello\n'


def test_the_readme_tells_the_options_and_their_defaults():
    parameters = inspect.signature(lowhaio_httpx2.LowhaioTransport).parameters
    readme = pathlib.Path(lowhaio_httpx2.__file__).with_name('README.md').read_text()
    [table] = re.findall(r'\| option \| default.*?\n\n', readme, re.DOTALL)
    rows = re.findall(r'^\| (`.*?) \| (.*?) \|', table, re.MULTILINE)
    told = {name: default for names, defaults in rows for name, default in zip(
        re.findall(r'`(\w+)`', names), defaults.split(', ', names.count(',')), strict=True)}
    assert list(told) == list(parameters)
    limits = parameters['limits'].default
    assert told.pop('limits') == (
        f'{limits.max_connections} connections, {limits.max_keepalive_connections} idle, '
        f'{limits.keepalive_expiry:g} seconds')
    for name, default in told.items():
        assert default == str(parameters[name].default)


def test_the_options_are_those_of_the_stock_transports():
    for kit in KITS:
        here = inspect.signature(kit.layer.LowhaioTransport).parameters
        there = inspect.signature(kit.httpx.AsyncHTTPTransport).parameters
        assert list(here) == list(there)
        assert [each.default for each in here.values()] == [
            each.default for each in there.values()]
