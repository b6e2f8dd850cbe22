"""`on_event` of a pool: what it is told, in which order, and that its errors change nothing."""

import asyncio
import contextlib
import contextvars
import gc
import ipaddress
import re
import select
import socket
import time
import typing

import pytest

import lowhaio
from lowhaio import (
    HttpConnectionError,
    HttpDataError,
    HttpDnsError,
    HttpTlsError,
    Pool,
    buffered,
    streamed,
)
from tests.harness import (
    CONTINUE,
    LOOPS,
    OK,
    PATIENCE,
    SWITCHING,
    UNFINISHED,
    UPGRADE,
    Answering,
    Server,
    ServerAt,
    ThreadServer,
    always,
    bound_to,
    chunked,
    connecting_to,
    context_of,
    failed,
    failure,
    get,
    head,
    holding,
    no_address,
    nothing_left,
    of_length,
    on_clock,
    on_loops,
    passing,
    pool,
    receive_end,
    receive_head,
    resolving,
    row,
    trusting,
    until,
    where,
    yielding,
)


class Events(list):
    """An `on_event` that keeps what it is told, and looks at the order of the times."""

    def __call__(self, event):
        assert not self or event.time >= self[-1].time
        assert getattr(event, 'started', 0) <= event.time
        self.append(event)

    def names(self):
        return [type(event).__name__ for event in self]

    def all(self, kind):
        return [event for event in self if type(event) is kind]

    def one(self, kind):
        [event] = self.all(kind)
        return event

    def reasons(self):
        return [event.reason for event in self.all(lowhaio.ConnectionClosed)]


EXCHANGE = ['HeadSent', 'ResponseStarted', 'HeadReceived', 'BodyEnded', 'ConnectionReleased']


# One request after the other


@on_loops
async def test_a_request_on_a_new_connection_and_one_that_reuses_it():
    events = Events()
    before = time.monotonic()
    async with Server(Answering(OK)) as server:
        async with pool(on_event=events) as request:
            await get(request, server.url + 'a', params={'b': 'c'})
            assert events.names() == [
                'RequestStarted', 'ConnectionAttempted', 'ConnectionTaken', *EXCHANGE]
            await get(request, server.url)
            assert events.names()[8:] == ['RequestStarted', 'ConnectionTaken', *EXCHANGE]
        assert events.names()[15:] == ['ConnectionClosed']
    assert before <= events[0].time
    assert events[-1].time <= time.monotonic()
    first, second = events.all(lowhaio.RequestStarted)
    assert first[1:] == (1, b'GET', server.origin, b'/a?b=c')
    assert second[1:] == (2, b'GET', server.origin, b'/')
    attempt = events.one(lowhaio.ConnectionAttempted)
    assert attempt.request == 1
    assert attempt[3:] == (f'127.0.0.1:{server.port}', 1, None)
    new, reused = events.all(lowhaio.ConnectionTaken)
    assert (new[1:4], reused[1:4]) == ((1, 1, 1), (2, 1, 2))
    assert new.facts.peer == ('127.0.0.1', server.port)
    sent = f'GET /a?b=c HTTP/1.1\r\nhost: 127.0.0.1:{server.port}\r\n\r\n'
    assert events.all(lowhaio.HeadSent)[0][1:] == (1, len(sent))
    assert [event[1:] for event in events.all(lowhaio.ResponseStarted)] == [(1,), (2,)]
    # The second head is the same as the first, and so was not parsed again.
    assert [event[1:] for event in events.all(lowhaio.HeadReceived)] == [
        (number, b'200', b'HTTP/1.1', ((b'content-length', b'2'),), len(OK) - 2)
        for number in (1, 2)]
    assert [event[1:] for event in events.all(lowhaio.BodyEnded)] == [(1, 2, None), (2, 2, None)]
    assert [event[1:] for event in events.all(lowhaio.ConnectionReleased)] == [
        (1, server.origin)] * 2
    closed = events[-1]
    assert closed[1:3] == (1, server.origin)
    assert attempt.started <= closed.opened <= attempt.time
    assert closed[4:] == (2, 'the pool is closed')


@on_loops
async def test_the_lookup_and_tls_are_told_of_and_whether_a_session_was_resumed():
    events = Events()
    async with Server(Answering(OK), context_of('https')) as server:
        options = {'get_dns_resolver': always('127.0.0.1'), 'get_ssl_context': trusting,
                   'keep_alive_timeout': 0, 'on_event': events}
        async with pool(**options) as request:
            for _ in range(2):
                await get(request, f'https://name.test:{server.port}/')
    assert events.names()[:10] == [
        'RequestStarted', 'NameResolved', 'ConnectionAttempted', 'TlsNegotiated',
        'ConnectionTaken', *EXCHANGE[:-1], 'ConnectionClosed']
    assert events[1].request == 1
    assert events[1][3:] == ('name.test', ('127.0.0.1',), None)
    first, second = events.all(lowhaio.TlsNegotiated)
    facts = events.all(lowhaio.ConnectionTaken)[0].facts
    assert first[3:] == (1, 'TLSv1.3', facts.cipher[0], False, None)
    assert second[3:] == (2, 'TLSv1.3', facts.cipher[0], True, None)
    assert facts.tls_version == 'TLSv1.3'
    assert events.reasons() == ['keep_alive_timeout is 0'] * 2


UPLOADS = {
    'one chunk': (of_length(3), streamed(b'abc'), 3),
    'several': (of_length(3), lambda: yielding(b'a', None, b'bc'), 3),
    'much': (of_length(10 ** 6), streamed(bytes(10 ** 6)), 10 ** 6),
    'encoded in chunks': (((b'transfer-encoding', b'chunked'),),
                          lambda: yielding(b'1\r\na\r\n', None, b'0\r\n\r\n'), 11),
    'after 100 Continue': ((*of_length(3), (b'expect', b'100-continue')), streamed(b'abc'), 3),
    'none': (of_length(0), streamed(b''), 0),
}


@on_loops
async def test_a_body_that_was_sent_is_told_of_after_its_head():
    async def script(peer):
        request_head = await peer.read_head()
        if b'100-continue' in request_head:
            await peer.send(CONTINUE)
        await peer.read_body(request_head)
        await peer.send(OK)

    for case, (fields, body, size) in UPLOADS.items():
        with row(case):
            events = Events()
            async with Server(script) as server, pool(on_event=events) as request:
                code, _, response = await request(
                    b'PUT', server.url, headers=fields, body=body)
                await buffered(response)
            assert events.one(lowhaio.BodySent)[1:] == (1, size)
            names = [name for name in events.names() if name in ('HeadSent', 'BodySent')]
            assert names == ['HeadSent', 'BodySent']
            expected = 'PUT / HTTP/1.1\r\n' + ''.join(
                f'{name.decode()}: {value.decode()}\r\n' for name, value in
                ((b'host', server.origin[7:].encode()), *fields)) + '\r\n'
            assert events.one(lowhaio.HeadSent).size == len(expected)


@on_loops
async def test_a_body_that_a_response_has_ended_was_not_sent():
    async def waiting():
        yield b'a'
        await asyncio.Event().wait()

    async def ending():
        with contextlib.suppress(asyncio.CancelledError):
            async for chunk in waiting():
                yield chunk

    async def script(peer):
        await peer.read_head()
        await peer.send(head(b'content-length: 2', start=b'HTTP/1.1 413 Too Much') + b'ok')

    for body in waiting, ending:
        with row(body.__name__):
            events = Events()
            async with Server(script) as server, pool(on_event=events) as request:
                code, _, response = await request(
                    b'PUT', server.url, headers=of_length(3), body=body)
                assert (code, await buffered(response)) == (b'413', b'ok')
                assert events.names()[3:] == ['HeadSent', *EXCHANGE[1:-1], 'ConnectionClosed']
                assert events.reasons() == ['the request was not sent whole']


@on_loops
async def test_a_body_that_raises_fails_its_request():
    events = Events()
    async with Server(holding()) as server, pool(on_event=events) as request:
        error = await failed(
            request(b'PUT', server.url, headers=of_length(3),
                    body=lambda: yielding(b'a', None, ValueError('no more'))),
            HttpDataError, ValueError)
        assert events.names()[3:] == ['HeadSent', 'ConnectionClosed', 'RequestFailed']
        assert events.reasons() == ['the request was not sent']
        assert events[-1].error is error
        del error
        events.clear()


@on_loops
async def test_sizes_are_those_of_the_content_and_times_those_of_the_bytes():
    """An interim response is the first byte. Framing is no content."""
    events = Events()
    gates = [asyncio.Event() for _ in range(3)]
    response = chunked(b'')

    async def script(peer):
        await peer.read_head()
        for gate, piece in zip(gates, (CONTINUE, response, b'2\r\nok\r\n0\r\n\r\n'), strict=True):
            await gate.wait()
            await peer.send(piece)

    async with Server(script) as server, pool(on_event=events) as request:
        task = asyncio.create_task(request(b'GET', server.url))
        await until(lambda: 'HeadSent' in events.names())
        assert not events.all(lowhaio.ResponseStarted)
        gates[0].set()
        await until(lambda: events.all(lowhaio.ResponseStarted))
        assert not events.all(lowhaio.HeadReceived)
        gates[1].set()
        _, _, body = await task
        assert events.one(lowhaio.HeadReceived).size == len(response)
        assert not events.all(lowhaio.BodyEnded)
        gates[2].set()
        assert await buffered(body) == b'ok'
        assert events.one(lowhaio.BodyEnded)[1:] == (1, 2, None)


@on_loops
async def test_a_request_can_be_told_from_others_by_the_context_of_its_caller():
    name = contextvars.ContextVar('name')
    numbers = {}

    def on_event(event):
        if isinstance(event, lowhaio.RequestStarted):
            numbers[event.request] = name.get()

    async def named(request, url, text):
        name.set(text)
        await get(request, url)

    async with Server(Answering(OK)) as server, pool(on_event=on_event) as request:
        async with asyncio.TaskGroup() as group:
            for text in 'abc':
                group.create_task(named(request, server.url, text))
    assert numbers == {1: 'a', 2: 'b', 3: 'c'}


@on_loops
async def test_what_is_sent_after_101_is_no_body():
    events = Events()

    async def script(peer):
        await peer.read_head()
        await peer.send(SWITCHING + b'\r\nupgrade: chat\r\n\r\n')
        await peer.send(await peer.read(4))

    async with Server(script) as server, pool(on_event=events) as request:
        _, _, body = await request(b'GET', server.url, headers=UPGRADE)
        await body.send(b'ping')
        assert await buffered(body) == b'ping'
    assert events.names()[3:] == ['HeadSent', *EXCHANGE[1:-1], 'ConnectionClosed']
    assert events.one(lowhaio.BodyEnded).size == 4
    assert events.reasons() == ['the response is the last of its connection']


# What fails


@on_loops
async def test_a_refused_request_has_no_events():
    events = Events()
    request, close = Pool(on_event=events)
    await failed(request(b'GET', 'nonsense'), HttpConnectionError, ValueError)
    await close()
    await failed(request(b'GET', 'http://127.0.0.1/'), HttpConnectionError, RuntimeError)
    assert events == []


@on_loops
async def test_the_error_of_each_step_that_fails_is_told_and_then_that_of_the_request():
    async def no_connection(*_):
        raise OSError('no way')

    def no_sock(family):
        raise OSError('no socket')

    [refusing] = bound_to('127.0.0.1')
    refusing_url = f'http://127.0.0.1:{refusing.getsockname()[1]}/'
    attempted = lowhaio.ConnectionAttempted
    async with Server(holding(b'no TLS')) as server:
        tls_url = server.url.replace('http', 'https')
        table = {
            'no such name': ('http://name.test/', {'get_dns_resolver': resolving(no_address)},
                             lowhaio.NameResolved, HttpDnsError),
            'a port that refuses': (refusing_url, {}, attempted, HttpConnectionError),
            'no network': ('http://224.0.0.1/', {}, attempted, HttpConnectionError),
            'no socket': (server.url, {'get_sock': no_sock}, attempted, HttpConnectionError),
            'get_connection': (server.url, {'get_connection': no_connection}, attempted,
                               HttpConnectionError),
            'no TLS': (tls_url, {'get_ssl_context': trusting, 'socket_timeout': 0.05},
                       lowhaio.TlsNegotiated, HttpTlsError),
        }
        for case, (url, options, step, kind) in table.items():
            with row(case):
                events = Events()
                async with pool(on_event=events, **options) as request:
                    error = await failure(request(b'GET', url))
                assert type(error) is kind
                failed_step = events.one(step)
                assert isinstance(failed_step.error, Exception)
                assert failed_step.request == 1
                ended = events.one(lowhaio.RequestFailed)
                assert ended[1:] == (1, error)
                made = ['there is no TLS'] if case == 'no TLS' else []
                assert events.reasons() == made
    refusing.close()


@on_loops
async def test_get_connection_is_an_attempt():
    events = Events()
    async with Server(Answering(OK)) as server:
        options = {'get_connection': connecting_to(http=server.port), 'on_event': events}
        async with pool(**options) as request:
            await get(request, 'http://name.test/')
    assert events.names()[:3] == ['RequestStarted', 'ConnectionAttempted', 'ConnectionTaken']
    assert events[1][3:] == (f'127.0.0.1:{server.port}', 1, None)


@on_loops
async def test_a_response_that_is_not_one_fails_its_request_and_closes_its_connection():
    events = Events()
    async with Server(holding(b'nonsense\r\n\r\n')) as server:
        async with pool(on_event=events) as request:
            error = await failure(request(b'GET', server.url))
    assert events.names()[3:] == [
        'HeadSent', 'ResponseStarted', 'ConnectionClosed', 'RequestFailed']
    assert events[-1].error is error
    assert events.reasons() == ['the exchange failed, or was dropped']


@on_loops
async def test_a_request_that_is_cancelled_has_failed_with_that():
    events = Events()
    async with Server(holding()) as server, pool(on_event=events) as request:
        task = asyncio.create_task(request(b'GET', server.url))
        await until(lambda: 'HeadSent' in events.names())
        task.cancel('enough')
        with pytest.raises(asyncio.CancelledError):
            await task
        assert events.names()[4:] == ['ConnectionClosed', 'RequestFailed']
        assert repr(events[-1].error) == "CancelledError('enough')"


async def read(body):
    await failure(buffered(body))


async def read_and_cancel(body):
    task = asyncio.create_task(buffered(body))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def close(body):
    await body.aclose()


async def drop(body):
    pass


# How a body ends before it is whole, and the cause of the error that is told.
UNREAD = {
    'it is cut off': (read, True, 'the peer closed the connection, 98 bytes before the end '
                               'that content-length told'),
    'its reading is cancelled': (read_and_cancel, False, 'CancelledError'),
    'it is closed': (close, False,
                     'ConnectionAbortedError: the response body was closed before its end'),
    'it is dropped': (drop, False,
                      'ConnectionAbortedError: the response body was dropped before its end'),
}


@on_loops
async def test_a_body_that_ends_before_it_is_whole_has_an_error():
    for case, (end, is_cut, cause) in UNREAD.items():
        async def script(peer):
            await peer.read_head()
            await peer.send(UNFINISHED)
            if not is_cut:  # noqa: B023
                await peer.closed()

        with row(case):
            events = Events()
            async with Server(script) as server, pool(on_event=events) as request:
                body = (await request(b'GET', server.url))[2]
                assert await anext(body) == b'ok'
                await end(body)
                del body
                gc.collect()
                assert events.names()[6:] == ['BodyEnded', 'ConnectionClosed']
                assert events[-2].size == 2
                error = events[-2].error
                assert str(error) == where(server) + f'reading the response body: {cause}'
                assert isinstance(error, HttpDataError)
                # It would keep what has failed.
                del error
                events.clear()


@on_loops
async def test_an_upload_that_fails_while_its_response_is_read_ends_both():
    """The connection is closed before the error is made."""
    events = Events()

    async def body():
        yield b'a'
        await started.wait()
        raise ValueError('no more')

    async def script(peer):
        await peer.read_head()
        await peer.send(UNFINISHED)
        await peer.closed()

    started = asyncio.Event()
    async with Server(script) as server, pool(on_event=events) as request:
        response = (await request(b'PUT', server.url, headers=of_length(3), body=body))[2]
        assert await anext(response) == b'ok'
        started.set()
        error = await failure(buffered(response))
        assert events.names()[6:] == ['ConnectionClosed', 'BodyEnded']
        assert events[-1].error is error
        assert str(error.__cause__) == 'no more'
        del error
        events.clear()


@on_loops
async def test_a_logger_that_raises_fails_a_request_whose_response_has_come():
    """There is one end all the same."""
    class Failing:
        def info(self, *_):
            raise OSError('no log')

    for case, response, end in (('whole', OK, None), ('not whole', UNFINISHED, HttpDataError)):
        with row(case):
            events = Events()
            async with Server(holding(response)) as server, pool(on_event=events) as request:
                await failed(request(b'GET', server.url, get_logger_adapter=lambda _: Failing()),
                             HttpDataError, OSError)
            ends = events.all(lowhaio.BodyEnded) + events.all(lowhaio.RequestFailed)
            assert [type(each.error) for each in ends] == [end or type(None)]


# Waiting for a place, and racing


@on_loops
async def test_waiting_for_a_place_is_told_of():
    events = Events()
    gate = asyncio.Event()

    async def script(peer):
        for _ in range(2):
            await peer.read_head()
            await gate.wait()
            await peer.send(OK)

    async with Server(script) as server:
        async with pool(on_event=events, max_connections=1, pool_timeout=30) as request:
            async with asyncio.TaskGroup() as group:
                group.create_task(get(request, server.url))
                group.create_task(get(request, server.url))
                await until(lambda: 'HeadSent' in events.names())
                gate.set()
    waited = events.one(lowhaio.PlaceAwaited)
    assert (waited.request, waited.error) == (2, None)
    # The connection went to the request that waited, so it did not idle.
    assert events.names().index('ConnectionReleased') < events.names().index('PlaceAwaited')
    assert [(taken.connection, taken.number) for taken in events.all(lowhaio.ConnectionTaken)] == [
        (1, 1), (1, 2)]


@on_clock
async def test_a_place_that_does_not_come_is_told_of():
    events = Events()
    async with Server(holding(UNFINISHED)) as server:
        async with pool(on_event=events, max_connections=1, pool_timeout=1) as request:
            first = (await request(b'GET', server.url))[2]
            task = asyncio.create_task(failure(request(b'GET', server.url)))
            await passing(1)
            error = await task
            waited = events.one(lowhaio.PlaceAwaited)
            assert waited.request == 2
            assert waited.error is error
            assert events[-1][1:] == (2, error)
            await first.aclose()
            del error
            events.clear()


# Why connections close


def saying(*lines, then=None):
    """A script that answers with these lines, and then sends something, or closes."""
    async def script(peer):
        while True:
            await peer.read_head()
            await peer.send(head(b'content-length: 2', *lines) + b'ok')
            if then is not None:
                await peer.send(then)
                return

    return script


# The script, options of the pool, those of the request, and the reason.
REASONS = {
    'the response says so': (saying(b'connection: close'), {}, {},
                             'the response is the last of its connection'),
    'the request says so': (saying(), {}, {'headers': ((b'connection', b'close'),)},
                            'connection: close in the request'),
    'reuse is off': (saying(), {'keep_alive_timeout': 0}, {}, 'keep_alive_timeout is 0'),
    'it has served enough': (saying(), {'max_requests_per_connection': 1}, {},
                             'max_requests_per_connection'),
    'none may idle': (saying(), {'max_idle_connections': 0}, {}, 'max_idle_connections'),
    'more has come': (saying(then=b'more'), {'recv_bufsize': 2 ** 16}, {},
                      'the peer has closed it, or has sent something'),
    'the peer closes it': (saying(then=b''), {}, {},
                           'the peer has closed it, or has sent something'),
    'the pool is closed': (saying(), {}, {}, 'the pool is closed'),
}


@on_loops
async def test_why_a_connection_closes():
    for case, (script, options, arguments, why) in REASONS.items():
        with row(case):
            events = Events()
            async with Server(script) as server:
                async with pool(on_event=events, **options) as request:
                    await get(request, server.url, **arguments)
                    if why != 'the pool is closed':
                        await until(events.reasons)
                assert events.reasons() == [why]
                assert events.all(lowhaio.ConnectionClosed)[0].requests == 1


@on_loops
async def test_surplus_that_comes_with_the_response_closes_its_connection():
    events = Events()
    async with Server(holding(OK + b'more')) as server, pool(on_event=events) as request:
        await get(request, server.url)
        assert events.reasons() == ['more has come than the response']
        assert 'ConnectionReleased' not in events.names()


@on_clock
async def test_an_idle_connection_closes_by_keep_alive_timeout():
    events = Events()
    async with Server(Answering(OK)) as server:
        async with pool(on_event=events, keep_alive_timeout=5) as request:
            await get(request, server.url)
            await passing(5)
            assert events.reasons() == ['keep_alive_timeout']


@on_loops
async def test_a_place_that_another_origin_needs_closes_an_idle_connection():
    events = Events()
    async with Server(Answering(OK)) as one, Server(Answering(OK)) as other:
        async with pool(on_event=events, max_connections=1) as request:
            await get(request, one.url)
            await get(request, other.url)
            assert events.reasons() == ['its place goes to another origin']


@on_loops
async def test_a_connection_to_an_address_that_is_gone_closes_at_the_next_request():
    events, answers = Events(), ['127.0.0.1', '127.0.0.2']

    async def resolve(host):
        return [ipaddress.ip_address(answers.pop(0))]

    socks = bound_to('127.0.0.1', '127.0.0.2')
    port = socks[0].getsockname()[1]
    async with ServerAt(socks[0], Answering(OK)), ServerAt(socks[1], Answering(OK)):
        async with pool(on_event=events, get_dns_resolver=resolving(resolve)) as request:
            for _ in range(2):
                await get(request, f'http://name.test:{port}/')
            assert events.reasons() == ['its address is no longer one of the host']
            assert events.all(lowhaio.ConnectionTaken)[1].facts.peer == ('127.0.0.2', port)


def end_has_come(sock):
    """Wait for it, while the loop does not get to see it."""
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    assert poller.poll(PATIENCE * 1000)


@on_loops
async def test_a_connection_whose_end_the_loop_has_not_seen_is_not_used():
    events, socks = Events(), []

    def get_sock(family):
        socks.append(socket.socket(family))
        return socks[-1]

    def script(sock):
        receive_head(sock)
        sock.sendall(OK)

    with ThreadServer(script) as server:
        async with pool(on_event=events, get_sock=get_sock) as request:
            code, _, body = await request(b'GET', server.url)
            end_has_come(socks[0])
            await get(request, server.url)
            assert events.reasons()[0] == 'the peer has closed it, or has sent something'
            assert events.all(lowhaio.ConnectionTaken)[1][2:4] == (2, 1)


@on_clock
async def test_a_connection_that_has_expired_before_its_timer_was_called_is_not_used():
    events = Events()
    async with Server(Answering(OK)) as server:
        async with pool(on_event=events, keep_alive_timeout=5) as request:
            await get(request, server.url)
            asyncio.get_running_loop().now += 6
            await get(request, server.url)
            assert events.reasons() == ['keep_alive_timeout']


@pytest.mark.parametrize('loop_name', LOOPS)
def test_a_body_whose_loop_was_closed_ends_with_its_pool(loop_name):
    async def begin():
        request, close = Pool(on_event=events)
        return (await request(b'GET', server.url))[2], close

    def script(sock):
        receive_head(sock)
        sock.sendall(UNFINISHED)
        receive_end(sock)

    events = Events()
    with nothing_left(), ThreadServer(script) as server:
        with contextlib.closing(LOOPS[loop_name]()) as loop:
            body, close = loop.run_until_complete(begin())
        with contextlib.closing(LOOPS[loop_name]()) as loop:
            loop.run_until_complete(close())
        assert events.names()[6:] == ['BodyEnded', 'ConnectionClosed']
        assert str(events[-2].error.__cause__) == 'the response body was dropped before its end'
        events.clear()
        del body, close


# The function itself


@pytest.mark.parametrize('kind', [ValueError, asyncio.CancelledError])
@on_loops
async def test_an_on_event_that_raises_changes_nothing_and_the_loop_is_told(kind):
    def on_event(event):
        raise kind(type(event).__name__)

    complaints = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    async with Server(Answering(OK)) as server, pool(on_event=on_event) as request:
        assert (await get(request, server.url))[2] == b'ok'
    assert [str(each['exception']) for each in complaints] == [
        'RequestStarted', 'ConnectionAttempted', 'ConnectionTaken', *EXCHANGE, 'ConnectionClosed']
    assert complaints[0]['message'] == 'on_event of a pool has raised at RequestStarted'


def test_an_on_event_that_is_no_function_is_refused():
    with pytest.raises(TypeError, match='^on_event must be a function of an event, got list$'):
        Pool(on_event=[])


@on_loops
async def test_a_watched_request_shows_what_it_is():
    async with pool(on_event=print) as request:
        assert request.__name__ == 'request'
        assert 'Send a request' in request.__doc__
    async with Server(holding(UNFINISHED)) as server:
        async with pool(on_event=lambda event: None) as request:
            body = (await request(b'GET', server.url))[2]
            shown = {repr(each) for each in gc.get_objects()
                     if type(each).__name__ in ('Watch', 'Trail')}
            assert '<Trail of request 1>' in shown
            assert any(map(re.compile('<Watch by <function .*>>').fullmatch, shown))
            await body.aclose()


def test_an_event_is_one_of_those_that_are_exported():
    for kind in typing.get_args(lowhaio.Event):
        assert kind.__name__ in lowhaio.__all__
        assert kind._fields[0] == 'time'
