"""Streaming both ways: a request is sent on while its response is read, and after 101 both sides
send as they like."""

import array
import asyncio
import contextlib
import functools
import gc
import hashlib
import socket
import ssl
import sys
import threading

import anyio
import pytest

from lowhaio import (
    HttpConnectionClosedError,
    HttpConnectionError,
    HttpDataError,
    Pool,
    buffered,
)
from lowhaio_proxy import proxied_pool
from tests.harness import (
    AS_CHUNKS,
    BLOCKING,
    CANCELLED,
    CLOSED_IN_TURN,
    EVIL,
    LOOPS,
    NO_CONTENT,
    OK,
    PATIENCE,
    SCHEMES,
    SWALLOWED,
    UPGRADE,
    SWITCHING,
    WAS_CLOSED,
    Sending,
    Server,
    Sockets,
    ThreadServer,
    Unwanted,
    WantingToWrite,
    at,
    cancelling,
    chunked,
    context_of,
    end_stream,
    ends_after,
    failed,
    forever,
    get,
    head,
    listening,
    measured,
    of_length,
    on_clock,
    on_loops,
    passing,
    pool,
    receive_end,
    receive_exactly,
    receive_head,
    row,
    run_until,
    say_goodbye,
    send_reset,
    small_sock,
    trusting,
    turns,
    until,
    uploading,
    url_of_proxy,
    wanting_to_write,
    with_length,
)

BEGUN = head(b'content-length: 4')
PART = BEGUN + b'ok'
LAST = with_length(b'connection: close')
OLD = b'HTTP/1.0 200 OK'
AFTER_HEAD = ' (after the head of a response, 200)'
NO_MORE = ' (after the head of a response, 204)'
TIMED_OUT = 'TimeoutError: socket_timeout, 10 seconds, passed'


# With the smallest buffer, the kernel takes milliseconds for each of many sends.
small_but_fast = functools.partial(small_sock, size=2 ** 16)


class Early:
    """A script that answers a request before its body has come, and keeps what comes of that until
    the client has closed.

    If it is not to read, it does so only when `reads` is set. Requests without a body are
    answered, too, and `connections` has the index of the connection of each of them.
    """

    def __init__(self, *pieces, is_read=True, ends=False):
        self.pieces = pieces
        self.ends = ends
        self.reads = asyncio.Event()
        self.answered = asyncio.Event()
        if is_read:
            self.reads.set()
        self.received = None
        self.connections = []

    async def __call__(self, peer):
        if (await peer.read_head()).startswith(b'GET'):
            self.connections.append(peer.index)
            await peer.send(OK)
            await peer.closed()
            return
        # The loop does not hold a transport that does not read: it would be collected, and close.
        self.peer = peer
        if not self.reads.is_set():
            peer.writer.transport.pause_reading()
        await peer.send(*self.pieces)
        if self.ends:
            peer.writer.write_eof()
        self.answered.set()
        await self.reads.wait()
        peer.writer.transport.resume_reading()
        self.received = await peer.closed()

    async def is_closed(self):
        self.reads.set()
        await until(lambda: self.received is not None)


@contextlib.asynccontextmanager
async def answered_early(script, body, scheme='http', headers=(), length=10 ** 9, **options):
    """The server, `request`, and the response to a request that has not been sent yet."""
    async with (Server(script, context_of(scheme)) as server,
                pool(get_ssl_context=trusting, get_sock=small_but_fast, **options) as request):
        code, _, response = await uploading(
            request, server, body, length=length, headers=headers)
        assert (code[:1], response.request_sent) == (b'2', False)
        # It must be possible to drop it.
        held = [response]
        del response
        yield server, request, held.pop()


# How much of the response has come: its bytes, and its content.
HALVES = {
    'a part of it': (PART, b'ok'),
    'the whole response': (OK, b'ok'),
    'no content': (head(start=NO_CONTENT), b''),
    'the whole response, which is the last': (LAST, b'ok'),
}

# What the sending is at: a body, what it sees of its end, and if the server reads.
SENDINGS = {
    'the body waits': (lambda: Sending(b'a', forever), CANCELLED, True),
    'the server does not read': (lambda: Sending(BLOCKING), CLOSED_IN_TURN, False),
}
EACH = [(half, sending) for half in HALVES for sending in SENDINGS]


async def reading(response):
    """A task that reads until nothing more comes."""
    task = asyncio.ensure_future(buffered(response))
    await turns(30)
    assert not task.done()
    return task


# ----------------------------------------------------------------- the sending inside the reading


def echoing(size):
    """A script that answers with what it gets, and reads nothing while that is not taken."""
    def script(sock):
        # Smaller ones are less than a segment has here, and then TCP waits at each.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        receive_head(sock)
        sock.sendall(head(b'content-length: %d' % size))
        left = size
        while left:
            data = sock.recv(16384)
            sock.sendall(data)
            left -= len(data)
        receive_head(sock)
        sock.sendall(OK)
        receive_end(sock)

    return script


@SCHEMES
@on_loops
async def test_an_echo_of_8_megabytes_comes_through_small_buffers(scheme):
    async def body():
        for number in range(128):
            chunk = bytes([number]) * 62500
            sent.update(chunk)
            yield chunk

    sent, received = hashlib.sha256(), hashlib.sha256()
    size = 8_000_000
    with ThreadServer(echoing(size), context_of(scheme)) as server:
        async with pool(get_ssl_context=trusting, get_sock=small_but_fast) as request:
            code, _, response = await uploading(request, server, body, length=size)
            assert (code, response.request_sent) == (b'200', False)
            length = 0
            async for chunk in response:
                received.update(chunk)
                length += len(chunk)
            assert (length, response.request_sent) == (size, True)
            assert received.digest() == sent.digest()
            assert (await get(request, server.url))[2] == b'ok'
            assert len(server.socks) == 1


@pytest.mark.parametrize('coding', ['length', 'chunks'])
@SCHEMES
@on_loops
async def test_a_body_may_wait_for_the_echo_of_each_chunk(scheme, coding):
    """Also after its last one, of which a length says that all has been sent."""
    chunks = [b'%d' % number for number in range(10, 60)]
    echoes = asyncio.Queue()

    async def body():
        for chunk in chunks:
            yield chunk if coding == 'length' else b'2\r\n%b\r\n' % chunk
            assert await echoes.get() == chunk
        if coding == 'chunks':
            yield b'0\r\n\r\n'

    async def script(peer):
        await peer.read_head()
        await peer.send(head(b'transfer-encoding: chunked'))
        for _ in chunks:
            data = await peer.read(2 if coding == 'length' else 7)
            await peer.send(b'2\r\n%b\r\n' % (data if coding == 'length' else data[3:5]))
        if coding == 'chunks':
            assert await peer.read(5) == b'0\r\n\r\n'
        await peer.send(b'0\r\na: b\r\n\r\n')
        await peer.read_head()
        await peer.send(OK)

    async with (Server(script, context_of(scheme)) as server,
                pool(get_ssl_context=trusting) as request):
        headers = AS_CHUNKS if coding == 'chunks' else of_length(100)
        code, _, response = await request(b'PUT', server.url, headers=headers, body=body)
        assert (code, response.request_sent) == (b'200', False)
        received = []
        async for chunk in response:
            received.append(chunk)
            echoes.put_nowait(chunk)
        assert (received, response.trailers) == (chunks, ((b'a', b'b'),))
        assert response.request_sent
        assert (await get(request, server.url))[2] == b'ok'
        assert len(server.peers) == 1


@SCHEMES
@on_loops
async def test_a_body_whose_last_byte_was_sent_may_wait_for_the_response(scheme):
    async def script(peer):
        await peer.read_head()
        assert await peer.read(2) == b'ab'
        await peer.send(BEGUN)
        await go_on.wait()
        await peer.send(b'good')
        await peer.read_head()
        await peer.send(OK)

    has_head, has_content, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
    body = Sending(b'ab', has_head.wait, has_content.wait)
    async with answered_early(script, body, scheme, length=2) as (server, request, response):
        has_head.set()
        go_on.set()
        assert await anext(response) == b'good'
        assert not response.request_sent
        has_content.set()
        assert await buffered(response) == b''
        assert (response.request_sent, body.events) == (True, SWALLOWED)
        assert (await get(request, server.url))[2] == b'ok'
        assert len(server.peers) == 1


@SCHEMES
@on_loops
async def test_the_sending_is_done_in_the_task_that_reads_and_no_task_is_made(scheme):
    def refuse(loop, coroutine, **kwargs):
        raise AssertionError(f'a task for {coroutine}')

    async def body():
        for number in range(5):
            tasks.append(asyncio.current_task())
            yield bytes([number]) * 100_000
            await asyncio.sleep(0)
        await shown.wait()
        tasks.append(asyncio.current_task())
        assert asyncio.all_tasks() == known

    def script(sock):
        receive_head(sock)
        sock.sendall(BEGUN)
        receive_exactly(sock, 500_000)
        sock.sendall(b'good')
        receive_end(sock)

    tasks = []
    shown = asyncio.Event()
    loop = asyncio.get_running_loop()
    known = asyncio.all_tasks()
    with ThreadServer(script, context_of(scheme)) as server:
        async with pool(get_ssl_context=trusting, get_sock=small_sock) as request:
            factory = loop.get_task_factory()
            loop.set_task_factory(refuse)
            try:
                _, _, response = await uploading(request, server, body, length=500_000)
                loop.call_soon(shown.set)
                assert await buffered(response) == b'good'
            finally:
                loop.set_task_factory(factory)
    assert tasks == [asyncio.current_task()] * 6


@on_loops
async def test_each_step_of_the_sending_is_in_the_task_of_its_reader():
    """A generator may be begun by the request, and be ended by another task."""
    async def body():
        while True:
            tasks.append(asyncio.current_task())
            yield b'a'
            await echoes.get()

    async def script(peer):
        await peer.read_head()
        await peer.send(head(b'content-length: 3'))
        for _ in range(3):
            await peer.send(await peer.read(1))
        await peer.closed()

    tasks, readers = [], []
    echoes = asyncio.Queue()
    async with answered_early(script, body) as (_, _, response):
        async def read():
            readers.append(asyncio.current_task())
            assert await anext(response) == b'a'

        for _ in range(3):
            await asyncio.create_task(read())
            echoes.put_nowait(None)
        await turns(10)
        # Nobody reads, so nobody has gone on with it.
        assert tasks == [asyncio.current_task(), *readers[1:]]
        await response.aclose()


@SCHEMES
@on_clock
async def test_who_does_not_read_does_not_send(scheme):
    steps = []

    async def body():
        for step in b'a', b'b', b'c':
            steps.append(step)
            yield step
            await asyncio.sleep(1)
        steps.append('the end')

    async def script(peer):
        await peer.read_head()
        await peer.send(BEGUN)
        received.append(await peer.read(1))
        received.append(await peer.read(2))
        await peer.send(b'good')
        await peer.closed()

    received = []
    async with answered_early(script, body, scheme, length=3) as (_, _, response):
        await passing(100)
        assert (steps, received, response.request_sent) == ([b'a'], [b'a'], False)
        task = await ends_after(2, buffered(response), lambda: len(steps) == 2)
        assert await task == b'good'
        assert (steps, received) == ([b'a', b'b', b'c', 'the end'], [b'a', b'bc'])
        assert response.request_sent


@on_loops
async def test_a_reading_gives_what_comes_while_the_body_waits_and_sends_while_nothing_comes():
    events = asyncio.Queue()

    async def body():
        for chunk in b'a', b'b':
            yield chunk
            await go_on.wait()
            go_on.clear()

    async def script(peer):
        await peer.read_head()
        assert await peer.read(1) == b'a'
        await peer.send(BEGUN)
        while (piece := await events.get()) is not None:
            await peer.send(piece)
        assert await peer.read(1) == b'b'
        await peer.send(b'd')
        await peer.closed()

    go_on = asyncio.Event()
    async with answered_early(script, body, length=2) as (_, _, response):
        events.put_nowait(b'goo')
        # The body waits all the time.
        assert b''.join([await anext(response)]) == b'goo'
        task = await reading(response)
        events.put_nowait(None)
        # Nothing comes before it is sent.
        go_on.set()
        await until(lambda: not go_on.is_set())
        go_on.set()
        assert await task == b'd'
        assert response.request_sent


@SCHEMES
@on_loops
async def test_a_long_response_and_a_long_request_take_turns(scheme):
    """Neither waits until the other has come to its end, and the loop has its turns."""
    marks = []
    has_begun = False
    is_wanted, has_come = threading.Event(), threading.Event()

    async def body():
        for number in range(200):
            # The server answers once it has the head, whenever its thread gets a turn.
            if number == 100:
                await until(lambda: has_begun)
                # Then something is there to be read, and nothing has waited for it.
                is_wanted.set()
                assert scheme == 'https' or has_come.wait(PATIENCE)
            marks.append('sent')
            yield bytes(50_000)

    def script(sock):
        receive_head(sock)
        sock.sendall(head(b'content-length: 10000000'))
        sender = threading.Thread(target=send_all, args=(sock,))
        sender.start()
        for _ in range(100):
            receive_exactly(sock, 100_000)
        sender.join()
        receive_end(sock)

    def send_all(sock):
        with contextlib.suppress(OSError):
            assert is_wanted.wait(PATIENCE)
            sock.sendall(bytes(100_000))
            has_come.set()
            sock.sendall(bytes(9_900_000))

    async def beside():
        nonlocal count
        while True:
            count += 1
            await asyncio.sleep(0)

    count = 0
    # Two threads can not use one TLS socket of Python at once without care, so TLS has the echo.
    with ThreadServer(script if scheme == 'http' else echoing(10_000_000),
                      context_of(scheme)) as server:
        async with pool(get_ssl_context=trusting) as request:
            _, _, response = await uploading(request, server, body, length=10_000_000)
            has_begun = True
            other = asyncio.create_task(beside())
            length = 0
            async for chunk in response:
                marks.append('read')
                length += len(chunk)
            other.cancel()
            assert (length, response.request_sent) == (10_000_000, True)
    # Each has done something while the other one was not at its end.
    assert 'read' in marks[:len(marks) - 1 - marks[::-1].index('sent')]
    assert count >= 5


# ------------------------------------------------------------------------------- how it can end


@SCHEMES
@on_loops
async def test_closing_the_response_ends_both_halves(scheme):
    for half, sending in EACH:
        raw, content = HALVES[half]
        make, events, is_read = SENDINGS[sending]
        with row(f'{half}, {sending}'):
            script, body = Early(raw, is_read=is_read), make()
            async with answered_early(
                    script, body, scheme, max_connections=1) as (server, request, response):
                if content:
                    assert await anext(response) == content
                await response.aclose()
                assert (body.events, response.request_sent) == (events, False)
                await script.is_closed()
                await response.aclose()
                error = await failed(anext(response), HttpDataError, ConnectionAbortedError, at(
                    server, f'reading the response body: {WAS_CLOSED}'))
                assert await failed(anext(response), HttpDataError, None) is error
                # Its place is free.
                assert (await get(request, server.url))[2] == b'ok'
                assert script.connections == [1]


@SCHEMES
@on_loops
async def test_closing_the_response_ends_the_reading_of_another_task(scheme):
    for half, sending in EACH:
        raw, content = HALVES[half]
        make, events, is_read = SENDINGS[sending]
        with row(f'{half}, {sending}'):
            script, body = Early(raw, is_read=is_read), make()
            async with answered_early(script, body, scheme) as (server, _, response):
                if content:
                    assert await anext(response) == content
                task = await reading(response)
                await response.aclose()
                await failed(task, HttpDataError, ConnectionAbortedError, at(
                    server, f'reading the response body: {WAS_CLOSED}'))
                # It was the reader who ended it, and not the task that had begun it.
                assert body.events == [events[0], False, 'cleaned up']
                await script.is_closed()


@on_loops
async def test_the_body_may_close_its_response():
    """It is being sent by a reading, which fails."""
    async def body():
        yield b'a'
        await go_on.wait()
        try:
            await responses[0].aclose()
            closed.append('first')
            await responses[0].aclose()
            for step in steps:
                if callable(step):
                    await step()
                else:
                    yield step
        finally:
            closed.append('finally')

    for half, (raw, content) in HALVES.items():
        for steps in (), (b'b',), (a_turn, b'b'), (forever,):
            with row((half, steps)):
                closed, responses, go_on = [], [], asyncio.Event()
                script = Early(raw)
                async with answered_early(script, body) as (server, _, response):
                    responses.append(response)
                    go_on.set()
                    if content:
                        assert await anext(response) == content
                    await failed(anext(response), HttpDataError, ConnectionAbortedError, at(
                        server, f'reading the response body: {WAS_CLOSED}'))
                    assert closed == ['first', 'finally']
                    await script.is_closed()
                    assert script.received == b'a'
                    responses.clear()


async def a_turn():
    await asyncio.sleep(0)


@on_loops
async def test_the_body_can_not_read_its_response():
    async def body():
        yield b'a'
        await go_on.wait()
        try:
            await failed(
                anext(responses[0]), HttpDataError, RuntimeError,
                at(server, 'reading the response body: RuntimeError: the body is being read by '
                   'another task'))
        finally:
            responses.clear()
        yield b'b'

    async def script(peer):
        await peer.read_head()
        await peer.send(BEGUN)
        assert await peer.read(2) == b'ab'
        await peer.send(b'good')
        await peer.closed()

    responses, go_on = [], asyncio.Event()
    async with answered_early(script, body, length=2) as (server, _, response):
        responses.append(response)
        go_on.set()
        assert await buffered(response) == b'good'
        assert response.request_sent


@on_loops
async def test_a_second_reader_is_refused_and_does_no_harm():
    async def script(peer):
        await peer.read_head()
        await peer.send(BEGUN)
        assert await peer.read(2) == b'ab'
        await peer.send(b'good')
        await peer.closed()

    go_on = asyncio.Event()
    body = Sending(b'a', go_on.wait, b'b')
    async with answered_early(script, body, length=2) as (server, _, response):
        task = await reading(response)
        await failed(anext(response), HttpDataError, RuntimeError, at(
            server, 'reading the response body: RuntimeError: the body is being read by another '
            'task'))
        go_on.set()
        assert await task == b'good'


def closing_generator(events, *steps):
    """A body that can clean up without awaiting, as when it is dropped."""
    async def body():
        try:
            for step in steps:
                if callable(step):
                    await step()
                else:
                    yield step
        finally:
            events.append('finally')

    return body


async def dropped_in_a_thread(box):
    await asyncio.to_thread(box.clear)


async def dropped_here(box):
    box.clear()


async def dropped_in_a_cycle(box):
    box.append(box)


async def dropped_with_its_reading(box):
    """The reading is a coroutine that waits, and is not waited for any more."""
    coroutine = box[0].__anext__()
    with contextlib.suppress(StopIteration):
        while coroutine.send(None) is None:
            await asyncio.sleep(0)
    box.clear()
    coroutine.close()


@pytest.mark.parametrize('drop', [
    dropped_here, dropped_in_a_thread, dropped_in_a_cycle, dropped_with_its_reading])
@SCHEMES
@on_loops
async def test_a_response_that_is_dropped_ends_both_halves(scheme, drop):
    loop = asyncio.get_running_loop()
    for half, sending in EACH:
        raw, content = HALVES[half]
        _, _, is_read = SENDINGS[sending]
        with row(f'{half}, {sending}'):
            events = []
            script = Early(raw, is_read=is_read)
            body = closing_generator(events, *((b'a', forever) if is_read else (BLOCKING,)))
            async with (Server(script, context_of(scheme)) as server,
                        pool(get_ssl_context=trusting, get_sock=small_sock,
                             max_connections=1) as request):
                box = [(await uploading(request, server, body))[2]]
                if content:
                    assert await anext(box[0]) == content
                factory = loop.get_task_factory()
                if drop is not dropped_in_a_thread:
                    loop.set_task_factory(None)
                await drop(box)
                loop.set_task_factory(factory)
                del box
                gc.collect()
                await until(lambda: events)  # noqa: B023
                assert events == ['finally']
                await script.is_closed()
                assert (await get(request, server.url))[2] == b'ok'
                assert script.connections == [1]


@pytest.mark.parametrize('new_loop', LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize('in_thread', [False, True], ids=['here', 'in another thread'])
@pytest.mark.parametrize('is_closed', [False, True], ids=['loop stopped', 'loop closed'])
def test_a_response_that_is_dropped_after_its_loop_ends_both_halves(
        new_loop, is_closed, in_thread):
    def script(sock):
        receive_head(sock)
        sock.sendall(PART)
        done.wait(PATIENCE)

    async def begin(server, body):
        request, _ = Pool(get_sock=sockets)
        _, _, response = await uploading(request, server, body)
        assert await anext(response) == b'ok'
        # What is begun here waits for the loop when it is dropped.
        coroutine = response.__anext__()
        coroutine.send(None)
        return [response, coroutine]

    for steps in (b'a', forever), (BLOCKING,):
        events = []
        sockets = Sockets()
        done = threading.Event()
        with row(steps[0][:1]), ThreadServer(script) as server:
            with contextlib.closing(new_loop()) as loop:
                box = loop.run_until_complete(begin(server, closing_generator(events, *steps)))
                if is_closed:
                    loop.close()
                if in_thread:
                    thread = threading.Thread(target=box.clear)
                    thread.start()
                    thread.join()
                else:
                    box.clear()
                gc.collect()
                assert events == ['finally']
                assert [sock.fileno() for sock in sockets.socks] == [-1]
                done.set()


@on_loops
async def test_a_response_that_its_own_body_refers_to_can_be_dropped():
    """They are a cycle, and which of them is finalized first is not known."""
    events = []

    def make():
        async def body():
            try:
                yield b'a'
                await forever()
                box.append(None)
            finally:
                events.append('finally')

        box = []
        return body, box

    script = Early(PART)
    async with Server(script) as server, pool() as request:
        body, box = make()
        box.append((await uploading(request, server, body))[2])
        assert await anext(box[0]) == b'ok'
        del body, box
        gc.collect()
        await until(lambda: events)
        await script.is_closed()


# Ends of both halves: what the server sends, the chunks of the body, and if all is well.
BOTH_ENDS = {
    'both have ended well': (OK, (b'a', a_turn, b'b'), True),
    'the request ends later': (OK, (b'a', a_turn, b'b', a_turn, a_turn), True),
    'the last response': (LAST, (b'a', a_turn, b'b'), False),
    'HTTP/1.0': (with_length(start=OLD), (b'a', a_turn, b'b'), False),
    'HTTP/1.0 that persists': (
        with_length(b'connection: keep-alive', start=OLD), (b'a', a_turn, b'b'), True),
    'bytes behind the response': (OK + EVIL, (b'a', a_turn, b'b'), False),
    'no content': (head(start=NO_CONTENT), (b'a', a_turn, b'b'), True),
    'no content, and bytes behind it': (
        head(start=NO_CONTENT) + EVIL, (b'a', a_turn, b'b'), False),
    'the response in pieces': (chunked(b'2\r\nok\r\n0\r\n\r\n'), (b'a', a_turn, b'b'), True),
}


@SCHEMES
@on_loops
async def test_a_connection_is_used_again_only_if_both_halves_have_ended_well(scheme):
    async def script(peer):
        if peer.index == 0:
            await peer.read_head()
            await peer.send(raw)
            assert await peer.read(2) == b'ab'
        assert (await peer.read_head()).startswith(b'GET')
        await peer.send(OK)
        await peer.closed()

    for name, (raw, steps, is_kept) in BOTH_ENDS.items():
        with row(name):
            answered = asyncio.Event()
            body = Sending(steps[0], answered.wait, *steps[1:])
            async with answered_early(
                    script, body, scheme, length=2) as (server, request, response):
                answered.set()
                assert await buffered(response) == (b'' if b'204' in raw else b'ok')
                assert (response.request_sent, body.events) == (True, SWALLOWED)
                assert (await get(request, server.url))[2] == b'ok'
                assert len(server.peers) == (1 if is_kept else 2)


@SCHEMES
@on_loops
async def test_bytes_behind_a_whole_response_that_come_late_are_never_delivered(scheme):
    """They come while the request is still being sent, and nobody looks for them."""
    async def script(peer):
        await peer.read_head()
        await peer.send(OK if peer.index == 0 else with_length())
        if peer.index == 0:
            assert await peer.read(1) == b'a'
            await peer.send(EVIL)
            await turns(20)
            has_sent.set()
        await peer.closed()

    has_sent = asyncio.Event()
    body = Sending(b'a', has_sent.wait)
    async with answered_early(script, body, scheme, length=1) as (server, request, response):
        assert [chunk async for chunk in response] == [b'ok']
        assert response.request_sent
        assert (await get(request, server.url))[2] == b'ok'
        assert len(server.peers) == 2


@on_loops
async def test_all_is_sent_when_the_last_byte_is_or_when_a_body_without_bytes_has_ended():
    """Also if the peer ends the connection before the body has come to its end."""
    script = Early(LAST, ends=True)
    body = Sending(b'a', forever)
    async with answered_early(script, body, length=1) as (_, _, response):
        assert await buffered(response) == b'ok'
        assert (response.request_sent, body.events) == (True, CANCELLED)
    script, go_on = Early(OK), asyncio.Event()
    async with Server(script) as server, pool() as request:
        _, _, response = await request(b'PUT', server.url, body=Sending(go_on.wait))
        assert not response.request_sent
        go_on.set()
        assert await buffered(response) == b'ok'
        assert response.request_sent


# ------------------------------------------------------------------------------------- errors


class Disk(OSError):
    pass


async def timing_out():
    async with asyncio.timeout(0.001):
        await forever()


# What a body does after its first chunk, and how that is told.
FAILING = {
    'an error': ((LookupError('no more'),), LookupError, "LookupError: no more"),
    'an error of the system': ((Disk(5, 'disk'),), Disk, 'Disk: [Errno 5] disk'),
    'a reset of its own': (
        (ConnectionResetError('elsewhere'),), ConnectionResetError,
        'ConnectionResetError: elsewhere'),
    'an end of its own': ((EOFError('elsewhere'),), EOFError, 'elsewhere'),
    'a time-out of its own': ((timing_out,), TimeoutError, 'TimeoutError'),
    'too many bytes': (
        (bytes(10),), ValueError, 'the body yielded more than its content-length of 10'),
    'too few bytes': (
        (b'b',), ValueError, 'the body ended 8 bytes short of its content-length of 10'),
    'text': (('b',), TypeError, 'TypeError: the body must yield bytes, got str'),
}


@pytest.mark.parametrize('half', HALVES)
@on_loops
async def test_an_error_of_the_body_is_told_by_the_reader(half):
    async def body():
        try:
            yield b'a'
            await go_on.wait()
            for step in steps:
                if isinstance(step, Exception):
                    raise step
                elif callable(step):
                    await step()
                else:
                    yield step
        finally:
            await asyncio.sleep(0)
            ended.append(asyncio.current_task())

    raw, content = HALVES[half]
    for name, (steps, cause, text) in FAILING.items():  # noqa: B007
        with row(name):
            go_on, ended = asyncio.Event(), []
            script = Early(raw)
            async with answered_early(
                    script, body, length=10, max_connections=1) as (server, request, response):
                if content:
                    assert await anext(response) == content
                go_on.set()
                error = await failed(
                    anext(response), HttpDataError, cause, at(server, f'the request body: {text}'))
                assert (error.reused, error.response_started) == (False, True)
                assert (ended, response.request_sent) == ([asyncio.current_task()], False)
                assert await failed(anext(response), HttpDataError, cause) is error
                assert await failed(buffered(response), HttpDataError, cause) is error
                await script.is_closed()
                # Nothing of a chunk that is too long was sent.
                assert script.received == (b'ab' if name == 'too few bytes' else b'a')
                assert (await get(request, server.url))[2] == b'ok'


@on_loops
async def test_a_time_out_inside_of_the_body_may_be_handled_there():
    async def body():
        yield b'a'
        await go_on.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.001):
                await forever()
        assert cancelling() == 0
        with anyio.move_on_after(0.001):
            await forever()
        yield b'b'

    async def script(peer):
        await peer.read_head()
        await peer.send(BEGUN)
        assert await peer.read(2) == b'ab'
        await peer.send(b'good')
        await peer.closed()

    go_on = asyncio.Event()
    async with answered_early(script, body, length=2) as (_, _, response):
        go_on.set()
        assert await buffered(response) == b'good'
        assert (response.request_sent, cancelling()) == (True, 0)


@pytest.mark.parametrize('early, in_another_task', [
    (False, False), (True, False), (False, True)],
    ids=['after the response', 'before it, too', 'in another task'])
@on_loops
async def test_a_body_may_wait_with_time_outs_for_what_the_response_brings(
        early, in_another_task):
    """It takes its cancellations back, so the reading goes on although it yields nothing."""
    async def body():
        yield b'a'
        if not early:
            await go_on.wait()
        while True:
            try:
                async with asyncio.timeout(0.001):
                    assert await echoes.get() == b'good'
                    break
            except TimeoutError:
                passed.append(None)
        yield b'b'

    async def script(peer):
        await peer.read_head()
        assert await peer.read(1) == b'a'
        await until(lambda: passed or not early)
        await peer.send(head(b'content-length: 8'))
        seen = len(passed)
        await until(lambda: len(passed) > seen + 1)
        await peer.send(b'good')
        assert await peer.read(1) == b'b'
        await peer.send(b' end')
        await peer.closed()

    go_on, echoes, passed = asyncio.Event(), asyncio.Queue(), []
    async with answered_early(script, body, length=2) as (_, _, response):
        go_on.set()
        received = []
        if in_another_task:
            task = asyncio.create_task(read_after_a_cancellation(response, received, echoes))
            await task
            assert task.cancelling() == 1
        else:
            await read_into(response, received, echoes)
            assert cancelling() == 0
        assert (received, response.request_sent) == ([b'good', b' end'], True)


async def read_into(response, received, echoes):
    async for chunk in response:
        received.append(chunk)
        echoes.put_nowait(chunk)


async def read_after_a_cancellation(response, received, echoes):
    """Read in a task that goes on although it was cancelled before."""
    asyncio.current_task().cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await a_turn()
    await read_into(response, received, echoes)


@on_loops
async def test_a_time_out_of_the_body_around_a_chunk_that_is_not_taken_is_told():
    async def body():
        yield b'a'
        await go_on.wait()
        async with asyncio.timeout(0.01):
            yield BLOCKING

    script, go_on = Early(PART, is_read=False), asyncio.Event()
    async with answered_early(script, body) as (server, _, response):
        go_on.set()
        assert await anext(response) == b'ok'
        await failed(anext(response), HttpDataError, TimeoutError, at(
            server, 'sending the request: TimeoutError: a time-out in the body passed while the '
            'request was being sent' + AFTER_HEAD))
        assert cancelling() == 0
        await script.is_closed()


# How a response goes wrong while the request is being sent, and how that is told.
BAD = {
    'malformed': (b'x\r\n', HttpDataError, ValueError, 'bad chunk-size line: expected CRLF after '
                  "the chunk, 1 to 16 hex digits, an optional extension and CRLF, got "
                  "b'\\r\\nx\\r\\n'"),
    'cut off': (None, HttpConnectionClosedError, EOFError,
                'the peer closed the connection in a chunk-size line'),
}


@SCHEMES
@on_loops
async def test_a_response_that_goes_wrong_ends_the_sending(scheme):
    """Whatever the sending is at."""
    for name, (piece, kind, cause, text) in BAD.items():
        for sending, (make, events, is_read) in SENDINGS.items():
            with row(f'{name}, {sending}'):
                async def script(peer):
                    await peer.read_head()
                    if not is_read:  # noqa: B023
                        peer.writer.transport.pause_reading()
                    await peer.send(chunked(b'2\r\nok\r\n'))
                    await go_on.wait()  # noqa: B023
                    if piece is not None:  # noqa: B023
                        await peer.send(piece)  # noqa: B023
                    else:
                        peer.writer.close()
                    await forever()

                if piece is None and (scheme == 'https' or not is_read):
                    continue  # a close of such a transport of asyncio sends a reset
                go_on, body = asyncio.Event(), make()
                async with answered_early(script, body, scheme) as (server, _, response):
                    assert await anext(response) == b'ok'
                    task = await reading(response)
                    go_on.set()
                    error = await failed(task, kind, cause, at(
                        server, f'reading the response body: {text}'))
                    assert error.response_started
                    assert body.events == [events[0], False, 'cleaned up']
                    assert await failed(anext(response), kind, cause) is error


class Gone:
    """A script that has answered when the first byte of the body comes, and then leaves."""

    def __init__(self, raw, leave):
        self.raw = raw
        self.leave = leave
        self.is_asked, self.is_gone = threading.Event(), threading.Event()
        self.go_on = asyncio.Event()

    def __call__(self, sock):
        if receive_head(sock).startswith(b'GET'):
            sock.sendall(OK)
            return
        begin = self.raw.index(b'\r\n\r\n') + 4
        sock.sendall(self.raw[:begin])
        assert sock.recv(1) == b'a'
        assert self.is_asked.wait(PATIENCE)
        sock.sendall(self.raw[begin:])
        self.leave(sock)
        self.is_gone.set()

    async def body(self):
        await self.go_on.wait()
        yield b'a'
        # So that it leaves.
        await asyncio.sleep(0)
        self.is_asked.set()
        assert self.is_gone.wait(PATIENCE)
        while True:
            yield b'b'


def leave_with_end(sock):
    sock.close()


@pytest.mark.parametrize('leave', [send_reset, leave_with_end])
@on_loops
async def test_what_the_server_said_before_the_sending_failed_is_read_before_the_error(leave):
    whole = head(b'content-length: 5000') + bytes(5000)
    for name, raw, content, is_well in [
            ('a part', head(b'content-length: 6000') + bytes(5000), bytes(5000), False),
            ('a part of the last', head(b'connection: close', b'content-length: 6000')
             + bytes(5000), bytes(5000), False),
            ('a whole response', whole, bytes(5000), False),
            ('no content', head(start=NO_CONTENT), b'', False),
            ('the last response', head(b'connection: close', b'content-length: 5000')
             + bytes(5000), bytes(5000), True),
            ('the last response, of HTTP/1.0', head(b'content-length: 5000', start=OLD)
             + bytes(5000), bytes(5000), True)]:
        script = Gone(raw, leave)
        with row(name), ThreadServer(script) as server:
            # Each read is a small part.
            async with pool(recv_bufsize=1000) as request:
                _, _, response = await uploading(request, server, script.body)
                assert not response.request_sent
                script.go_on.set()
                read = b''
                with contextlib.suppress(HttpDataError):
                    async for chunk in response:
                        read += chunk
                assert (read, response.request_sent) == (content, False)
                if is_well:
                    assert await buffered(response) == b''
                else:
                    error = await failed(anext(response), HttpConnectionClosedError, None)
                    assert str(error).startswith(at(server, 'sending the request: '))
                    assert str(error).endswith(
                        NO_MORE if raw.startswith(NO_CONTENT) else AFTER_HEAD)
                    assert type(error.__cause__) in (BrokenPipeError, ConnectionResetError)
                    assert await failed(
                        anext(response), HttpConnectionClosedError, None) is error
                assert (await get(request, server.url))[2] == b'ok'
                assert len(server.socks) == 2


# ------------------------------------------------------------------------------------------ time


@pytest.mark.parametrize('half', HALVES)
@SCHEMES
@on_clock
async def test_no_time_runs_while_nobody_reads(scheme, half):
    """Whatever the sending is at: also before the first reading."""
    raw, content = HALVES[half]
    for sending, (_, _, is_read) in SENDINGS.items():
        with row(sending):
            go_on = asyncio.Event()
            events = []
            steps = (b'a', go_on.wait, b'b') if is_read else (BLOCKING,)
            body = closing_generator(events, *steps)
            length = 2 if is_read else len(BLOCKING)
            script = Early(raw, is_read=is_read)
            async with answered_early(script, body, scheme, length=length) as (_, _, response):
                await passing(3600)
                if content:
                    assert await anext(response) == content
                task = await reading(response)
                await passing(9)
                assert not task.done()
                script.reads.set()
                go_on.set()
                if half == 'a part of it':
                    await until(lambda: response.request_sent)
                    await script.peer.send(b'ok')
                assert await task == (b'ok' if half == 'a part of it' else b'')
                assert response.request_sent
                assert events == ['finally']


@SCHEMES
@on_clock
async def test_no_time_runs_between_two_readings(scheme):
    """An hour is not too long, however little had been left of the time before."""
    script = Early(BEGUN, is_read=False)
    body = closing_generator([], BLOCKING)
    async with answered_early(script, body, scheme, length=len(BLOCKING)) as (_, _, response):
        for piece in b'g', b'o', b'o':
            task = asyncio.ensure_future(anext(response))
            await passing(9)
            assert not task.done()
            await script.peer.send(piece)
            assert await task == piece
            await passing(3600)
        task = await reading(response)
        script.reads.set()
        await until(lambda: response.request_sent)
        await script.peer.send(b'd')
        assert await task == b'd'


@SCHEMES
@on_clock
async def test_a_reading_waits_for_room_for_socket_timeout(scheme):
    """It does so anew at each reading, and each progress of the sending."""
    for half, (raw, content) in HALVES.items():
        for prelude in None, b'g':
            if prelude is not None and raw is not PART:
                continue
            with row((half, prelude)):
                events = []
                script = Early(raw, is_read=False)
                body = closing_generator(events, BLOCKING)
                async with answered_early(script, body, scheme) as (server, _, response):
                    if content:
                        assert await anext(response) == content
                    if prelude is not None:
                        task = asyncio.ensure_future(anext(response))
                        await passing(9)
                        await script.peer.send(prelude)
                        assert await task == prelude
                    seconds, task = await measured(anext(response))
                    # A busy kernel may make room a little later.
                    assert 10 <= seconds < 60
                    error = await failed(task, HttpDataError, TimeoutError, at(
                        server, f'sending the request: {TIMED_OUT}' + (
                            AFTER_HEAD if half != 'no content' else NO_MORE)))
                    assert error.response_started
                    assert events == ['finally']
                    assert await failed(anext(response), HttpDataError, TimeoutError) is error
                    await script.is_closed()


@on_clock
async def test_a_progress_of_the_sending_starts_the_time_anew():
    def take(sock):
        count = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                count += len(sock.recv(2 ** 20))
        return count

    async def get_connection(*_):
        nonlocal theirs
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        theirs.send(PART)
        return ours

    theirs = None
    async with pool(get_connection=get_connection) as request:
        _, _, response = await request(
            b'PUT', 'http://a.test/', headers=of_length(len(BLOCKING)),
            body=closing_generator([], BLOCKING))
        assert await anext(response) == b'ok'
        task = asyncio.ensure_future(anext(response))
        for _ in range(5):
            await passing(9)
            assert not task.done()
            assert take(theirs)
        await passing(9.9)
        assert not task.done()
        await passing(0.2)
        await failed(task, HttpDataError, TimeoutError)
        theirs.close()


@SCHEMES
@on_clock
async def test_no_time_runs_while_the_body_is_waited_for(scheme):
    for half, (raw, content) in HALVES.items():
        with row(half):
            go_on = asyncio.Event()
            script = Early(raw)
            body = closing_generator([], b'a', go_on.wait, b'b')
            async with answered_early(script, body, scheme, length=2) as (_, _, response):
                if content:
                    assert await anext(response) == content
                task = await reading(response)
                await passing(3600)
                assert not task.done()
                go_on.set()
                if half == 'a part of it':
                    await until(lambda: response.request_sent)
                    await script.peer.send(b'ok')
                await task


@SCHEMES
@on_clock
async def test_once_all_is_sent_each_reading_has_socket_timeout(scheme):
    go_on = asyncio.Event()
    script = Early(BEGUN)
    body = closing_generator([], b'a', go_on.wait, b'b')
    async with answered_early(script, body, scheme, length=2) as (server, _, response):
        task = await reading(response)
        await passing(100)
        go_on.set()
        await until(lambda: response.request_sent)
        await passing(9)
        await script.peer.send(b'g')
        assert not task.done()
        task = await ends_after(10, task)
        await failed(task, HttpDataError, TimeoutError, at(
            server, f'reading the response body: {TIMED_OUT}'))


# ------------------------------------------------------------------------------- cancellation


async def with_timeout(awaitable):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as scope:
            asyncio.get_running_loop().call_later(
                0.01, lambda: scope.reschedule(asyncio.get_running_loop().time()))
            await awaitable


async def with_move_on_after(awaitable):
    with anyio.move_on_after(0.01) as scope:
        await awaitable
    assert scope.cancelled_caught


async def in_a_group(awaitable):
    async def fail():
        await turns(20)
        raise LookupError

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            await awaitable
    assert [type(error) for error in caught.value.exceptions] == [LookupError]


async def cancelled(awaitable):
    task = asyncio.ensure_future(awaitable)
    await turns(20)
    task.cancel('why')
    with pytest.raises(asyncio.CancelledError, match='^why$'):
        await task


SCOPES = pytest.mark.parametrize('scope', [
    with_timeout, with_move_on_after, in_a_group, cancelled])


@SCOPES
@SCHEMES
@on_loops
async def test_a_reading_that_is_cancelled_ends_both_halves(scheme, scope):
    for half, sending in EACH:
        raw, content = HALVES[half]
        make, (kind, _, _), is_read = SENDINGS[sending]
        with row(f'{half}, {sending}'):
            script, body = Early(raw, is_read=is_read), make()
            async with answered_early(
                    script, body, scheme, max_connections=1) as (server, request, response):
                if content:
                    assert await anext(response) == content
                await scope(anext(response))
                assert cancelling() == 0
                # In a scope of anyio, whatever is awaited is cancelled, also in a cleanup.
                assert body.events == [kind, body.events[1]] + (
                    [] if scope is with_move_on_after else ['cleaned up'])
                assert not response.request_sent
                await script.is_closed()
                error = await failed(anext(response), HttpDataError, asyncio.CancelledError)
                assert await failed(buffered(response), HttpDataError, None) is error
                assert (await get(request, server.url))[2] == b'ok'
                assert script.connections == [1]


@pytest.mark.parametrize('end', ['closed', 'malformed', 'malformed later'])
@on_loops
async def test_the_connection_is_closed_before_the_body_cleans_up(end):
    """And a task may end both halves that goes on although it was cancelled before."""
    async def body():
        try:
            yield b'a'
            await forever()
        finally:
            await script.is_closed()
            events.append('cleaned up')

    async def end_both():
        asyncio.current_task().cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await a_turn()
        if end == 'closed':
            await response.aclose()
        else:
            await failed(anext(response), HttpDataError, ValueError)
        events.append('ended')

    events = []
    script = Early(chunked(b'2\r\nok\r\n'))
    async with answered_early(script, body) as (_, _, response):
        assert await anext(response) == b'ok'
        if end == 'malformed':
            await script.peer.send(b'x\r\n')
            await turns(20)
        task = asyncio.create_task(end_both())
        if end == 'malformed later':
            await turns(20)
            await script.peer.send(b'x\r\n')
        await task
        assert events == ['cleaned up', 'ended']


@SCHEMES
@on_loops
async def test_a_cancellation_that_the_body_still_answers_wins_over_what_comes(scheme):
    """A response does not end the request, nor does content end the reading."""
    async def body():
        yield b'a'
        try:
            await forever()
        finally:
            cleans_up.set()
            await go_on.wait()

    for is_reading in False, True:
        with row(is_reading):
            cleans_up, go_on, goes_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

            async def script(peer):
                await peer.read_head()
                if is_reading:  # noqa: B023
                    await peer.send(BEGUN)
                await goes_on.wait()  # noqa: B023
                await peer.send(b'good' if is_reading else OK)  # noqa: B023
                await peer.closed()

            async with Server(script, context_of(scheme)) as server, pool(
                    get_ssl_context=trusting) as request:
                upload = uploading(request, server, body)
                task = asyncio.create_task(whole(upload) if is_reading else upload)
                await until(lambda: server.peers)  # noqa: B023
                await turns(30)
                task.cancel('why')
                await cleans_up.wait()
                goes_on.set()
                await turns(30)
                assert not task.done()
                go_on.set()
                with pytest.raises(asyncio.CancelledError, match='^why$'):
                    await task


async def whole(response):
    _, _, body = await response
    return await buffered(body)


@on_loops
async def test_a_body_that_has_gone_on_after_a_cancellation_may_be_ended_by_a_response():
    """The request has not been cancelled then: nor is it if the response comes after its body."""
    async def body():
        with contextlib.suppress(asyncio.CancelledError):
            waits.set()
            await forever()
        yield b'a'
        await forever()

    async def script(peer):
        await peer.read_head()
        assert await peer.read(1) == b'a'
        await peer.send(b'HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\n\r\nno')
        await peer.closed()

    waits = asyncio.Event()
    async with Server(script) as server, pool() as request:
        task = asyncio.create_task(uploading(request, server, body, length=2))
        await waits.wait()
        await turns(5)
        task.cancel('why')
        code, _, response = await task
        assert (code, await buffered(response)) == (b'413', b'no')


@on_loops
async def test_a_body_that_swallows_a_cancellation_goes_on_and_so_does_the_reading():
    async def body():
        yield b'a'
        with contextlib.suppress(asyncio.CancelledError):
            waits.set()
            await forever()
        yield b'b'
        await go_on.wait()

    async def script(peer):
        await peer.read_head()
        await peer.send(BEGUN)
        assert await peer.read(2) == b'ab'
        await peer.send(b'good')
        await peer.closed()

    waits, go_on = asyncio.Event(), asyncio.Event()
    async with answered_early(script, body, length=2) as (_, _, response):
        task = asyncio.create_task(anext(response))
        await waits.wait()
        await turns(5)
        task.cancel()
        assert await task == b'good'
        go_on.set()
        assert await buffered(response) == b''
        assert response.request_sent


@SCHEMES
@on_loops
async def test_much_that_has_come_is_read_while_the_body_waits(scheme):
    """In turns with other tasks."""
    async def script(peer):
        await peer.read_head()
        await peer.send(head(b'content-length: 600000') + bytes(600_000))
        await peer.closed()

    async def beside():
        while True:
            counts.append(None)
            await asyncio.sleep(0)

    counts = []
    body = Sending(b'a', forever)
    async with answered_early(script, body, scheme, recv_bufsize=1000) as (_, _, response):
        other = asyncio.create_task(beside())
        length = 0
        while length < 600_000:
            length += len(await anext(response))
        other.cancel()
        assert len(counts) > 1
        await response.aclose()


def going_on(yielded):
    """A body that goes on when it is cancelled or closed."""
    async def body():
        yield b'a'
        try:
            await forever()
        except BaseException as error:
            yielded.append(type(error))
            yield b'more'
            yielded.append('asked for more')
            yield b'and more'

    return body


@pytest.mark.parametrize('has_response', [False, True], ids=['the request', 'the reading'])
@on_loops
async def test_nothing_is_sent_of_what_a_body_yields_when_a_coroutine_is_dropped(has_response):
    """The connection is still open then."""
    yielded = []
    script = Early(*[BEGUN] * has_response)
    async with Server(script) as server, pool() as request:
        coroutine = uploading(request, server, going_on(yielded))
        if has_response:
            _, _, response = await coroutine
            coroutine = response.__anext__()
        await run_until(coroutine, script.answered.is_set)
        coroutine.close()
        assert yielded == [asyncio.CancelledError]
        await script.is_closed()
        assert script.received == b'a'


@pytest.mark.parametrize('end', ['closed', 'dropped', 'malformed', 'ended'])
@on_loops
async def test_nothing_is_sent_of_what_a_body_yields_when_it_is_closed(end):
    yielded = []
    pieces = [chunked(b'2\r\nok\r\n')] if end == 'malformed' else [LAST]
    script = Early(*pieces, ends=end == 'ended')
    async with answered_early(script, going_on(yielded)) as (_, _, response):
        if end == 'closed':
            await response.aclose()
        elif end == 'malformed':
            assert await anext(response) == b'ok'
            await script.peer.send(b'x\r\n')
            await failed(anext(response), HttpDataError, ValueError)
        elif end == 'ended':
            assert await buffered(response) == b'ok'
        del response
        gc.collect()
        assert yielded == [asyncio.CancelledError]
        await script.is_closed()
        assert script.received == b'a'


# ----------------------------------------------------------------------------------- the pool


@SCHEMES
@on_loops
async def test_the_pool_may_be_closed_while_both_halves_go_on(scheme):
    script = Early(PART)
    go_on = asyncio.Event()
    body = Sending(b'a', go_on.wait, b'b')
    async with Server(script, context_of(scheme)) as server:
        request, close = Pool(get_ssl_context=trusting)
        _, _, response = await uploading(request, server, body, length=2)
        await close()
        task = await reading(response)
        go_on.set()
        await until(lambda: response.request_sent)
        await script.peer.send(b'ok')
        assert await task == b'okok'
        assert body.events == [False, 'cleaned up']
        await script.is_closed()
        assert script.received == b'ab'


class Adapter:
    """A logger adapter that raises when the response is logged."""

    def __init__(self, error):
        self.error = error

    def __call__(self, extra):
        return self

    def debug(self, *args, **kwargs):
        pass

    def info(self, message, *args, **kwargs):
        if message.startswith('Received'):
            raise self.error


@SCHEMES
@on_loops
async def test_a_logger_adapter_that_raises_ends_both_halves(scheme):
    for sending, (_, _, is_read) in SENDINGS.items():
        for error in Unwanted('of the adapter'), asyncio.CancelledError('of the adapter'):
            with row((sending, error)):
                events = []
                script = Early(PART, is_read=is_read)
                steps = (b'a', forever) if is_read else (BLOCKING,)
                async with Server(script, context_of(scheme)) as server, pool(
                        get_ssl_context=trusting, get_sock=small_but_fast,
                        max_connections=1) as request:
                    upload = request(
                        b'PUT', server.url, headers=of_length(10 ** 9),
                        body=closing_generator(events, *steps),
                        get_logger_adapter=Adapter(error))
                    if isinstance(error, Unwanted):
                        await failed(upload, HttpDataError, Unwanted, at(
                            server, 'logging: Unwanted: of the adapter'))
                    else:
                        with pytest.raises(asyncio.CancelledError, match='^of the adapter$'):
                            await upload
                    assert events == ['finally']
                    await script.is_closed()
                    assert (await get(request, server.url))[2] == b'ok'


# ------------------------------------------------------------------------------------ after 101


SWITCHED = head(b'upgrade: chat', start=SWITCHING)


def after_101(script, first=b''):
    """A script that begins when the protocol has been switched. Requests without an upgrade are
    answered."""
    async def serve(peer):
        if b'upgrade' not in await peer.read_head():
            await peer.send(OK)
            await peer.closed()
            return
        await peer.send(SWITCHED + first)
        await script(peer)

    return serve


@contextlib.asynccontextmanager
async def switched(script, scheme='http', first=b'', **options):
    """The server, `request`, and the response to one that has switched to another protocol."""
    async with (Server(after_101(script, first), context_of(scheme)) as server,
                pool(get_ssl_context=trusting, get_sock=small_but_fast, **options) as request):
        code, _, stream = await request(b'GET', server.url, headers=UPGRADE)
        assert (code, stream.request_sent) == (b'101', True)
        held = [stream]
        del stream
        yield server, request, held.pop()


async def echo(peer):
    while data := await peer.reader.read(65536):
        await peer.send(data)


def taking_all_after(go_on):
    """A script that reads nothing until it may, and tells when it has got all of BLOCKING."""
    async def script(peer):
        peer.writer.transport.pause_reading()
        await go_on.wait()
        peer.writer.transport.resume_reading()
        assert await peer.read(len(BLOCKING)) == BLOCKING
        await peer.send(b'all')
        await peer.closed()

    return script


async def deaf(peer):
    """It reads nothing until it is told to."""
    peer.writer.transport.pause_reading()
    await forever()


@SCHEMES
@on_loops
async def test_after_101_both_sides_send_as_they_like(scheme):
    async def script(peer):
        assert await peer.read(2) == b'ab'
        await peer.send(b'cd')
        await peer.send(b'ef')
        assert await peer.read(8) == b'ghijklmn'
        peer.writer.write(b'op')
        peer.writer.close()

    async with switched(script, scheme, first=b'hello') as (server, request, stream):
        # What came with the head is first.
        assert await anext(stream) == b'hello'
        await stream.send(b'a')
        await stream.send(b'')
        await stream.send(b'b')
        assert await anext(stream) == b'cd'
        assert await anext(stream) == b'ef'
        await stream.send(bytearray(b'gh'))
        await stream.send(memoryview(b'ij'))
        await stream.send(array.array('I', [int.from_bytes(b'klmn', sys.byteorder)]))
        assert [chunk async for chunk in stream] == [b'op']
        assert await buffered(stream) == b''
        # Its connection is never used again.
        assert (await get(request, server.url))[2] == b'ok'
        assert len(server.peers) == 2


@SCHEMES
@on_loops
async def test_after_101_what_came_with_the_head_is_first_however_much_it_is(scheme):
    first = bytes(range(256)) * 300

    async def script(peer):
        await peer.send(b'and more')
        peer.writer.close()

    async with switched(script, scheme, first, recv_bufsize=1000) as (_, _, stream):
        chunks = [chunk async for chunk in stream]
        assert b''.join(chunks) == first + b'and more'
        assert max(map(len, chunks)) <= 1000
    async with switched(script, scheme, first) as (_, _, stream):
        assert await buffered(stream) == first + b'and more'


@SCHEMES
@on_loops
async def test_after_101_one_task_reads_while_another_sends(scheme):
    """A server that reads only as far as its answers are taken would stop both otherwise."""
    def script(sock):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        receive_head(sock)
        sock.sendall(SWITCHED)
        for _ in range(0, size, 10_000):
            sock.sendall(receive_exactly(sock, 10_000))
        if scheme == 'https':
            say_goodbye(sock)

    async def send():
        for number in range(0, size, 100_000):
            await stream.send(bytes([number // 100_000]) * 100_000)

    size = 10_000_000
    with ThreadServer(script, context_of(scheme)) as server:
        async with pool(get_ssl_context=trusting, get_sock=small_but_fast) as request:
            _, _, stream = await request(b'GET', server.url, headers=UPGRADE)
            async with asyncio.TaskGroup() as group:
                group.create_task(send())
                received = await buffered(stream)
            assert received == b''.join(bytes([number]) * 100_000 for number in range(100))


@SCHEMES
@on_loops
async def test_after_101_no_task_is_made(scheme):
    def refuse(loop, coroutine, **kwargs):
        raise AssertionError(f'a task for {coroutine}')

    async with switched(echo, scheme) as (_, _, stream):
        loop = asyncio.get_running_loop()
        factory = loop.get_task_factory()
        loop.set_task_factory(refuse)
        try:
            await stream.send(b'ab')
            assert await anext(stream) == b'ab'
            await stream.aclose()
        finally:
            loop.set_task_factory(factory)


@SCHEMES
@on_clock
async def test_after_101_a_reading_may_wait_for_longer_than_socket_timeout(scheme):
    async with switched(echo, scheme) as (_, _, stream):
        task = asyncio.ensure_future(anext(stream))
        await passing(3600)
        await stream.send(b'a')
        await until(task.done)
        assert await task == b'a'
        # Nor does it matter how long nobody reads.
        await passing(3600)
        task = asyncio.ensure_future(anext(stream))
        await passing(3600)
        assert not task.done()
        await stream.send(b'b')
        assert await task == b'b'


@SCHEMES
@on_clock
async def test_after_101_send_waits_until_there_is_room_for_socket_timeout(scheme):
    """And so long anew after each progress. Whoever reads fails, too."""
    async with switched(deaf, scheme) as (server, _, stream):
        reader = asyncio.ensure_future(anext(stream))
        await passing(100)
        seconds, task = await measured(stream.send(BLOCKING))
        # A busy kernel may make room a little later.
        assert 10 <= seconds < 60
        text = at(server, f'sending the request: {TIMED_OUT}', 'GET')
        error = await failed(task, HttpDataError, TimeoutError, text)
        assert error.response_started
        assert await failed(reader, HttpDataError, TimeoutError) is error
        assert await failed(anext(stream), HttpDataError, TimeoutError) is error
        assert await failed(stream.send(b'a'), HttpDataError, TimeoutError) is error


@on_clock
async def test_after_101_each_progress_of_send_starts_its_time_anew():
    async def get_connection(*_):
        nonlocal theirs
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        theirs.send(SWITCHED)
        return ours

    theirs = None
    async with pool(get_connection=get_connection) as request:
        _, _, stream = await request(b'GET', 'http://a.test/', headers=UPGRADE)
        reader = asyncio.ensure_future(anext(stream))
        task = asyncio.ensure_future(stream.send(BLOCKING))
        for _ in range(5):
            await passing(9)
            # What comes is no progress of the sending.
            theirs.send(b'a')
            assert await reader == b'a'
            reader = asyncio.ensure_future(anext(stream))
            assert not task.done()
            assert len(theirs.recv(2 ** 20)) > 0
        for _ in range(3):
            await passing(3)
            theirs.send(b'a')
            assert await reader == b'a'
            reader = asyncio.ensure_future(anext(stream))
        assert not task.done()
        await passing(1)
        await until(task.done)
        error = await failed(task, HttpDataError, TimeoutError)
        assert await failed(reader, HttpDataError, TimeoutError) is error
        theirs.close()


@SCHEMES
@on_loops
async def test_after_101_send_returns_when_the_kernel_has_taken_all(scheme):
    go_on = asyncio.Event()
    async with switched(taking_all_after(go_on), scheme) as (_, _, stream):
        task = asyncio.ensure_future(stream.send(BLOCKING))
        await turns(50)
        assert not task.done()
        go_on.set()
        await task
        assert await anext(stream) == b'all'


@SCOPES
@SCHEMES
@on_loops
async def test_after_101_a_reading_that_is_cancelled_has_taken_nothing(scheme, scope):
    async def script(peer):
        while True:
            await asks.get()
            await peer.send(b'ab')

    asks = asyncio.Queue()
    async with switched(script, scheme) as (server, _, stream):
        for _ in range(3):
            await scope(anext(stream))
            assert cancelling() == 0
            asks.put_nowait(None)
            assert await anext(stream) == b'ab'
            await stream.send(b'c')
        # Also if the bytes are there, and the reader was woken for them.
        task = asyncio.ensure_future(anext(stream))
        await turns(5)
        server.peers[0].writer.write(b'cd')
        for _ in range(30):
            await turns(1)
            if not task.done():
                task.cancel()
            [result] = await asyncio.gather(task, return_exceptions=True)
            if not isinstance(result, asyncio.CancelledError):
                break
            task = asyncio.ensure_future(anext(stream))
        else:
            result = await task
        assert result == b'cd'


@on_loops
async def test_after_101_a_cancellation_when_the_bytes_have_just_come_loses_none():
    """At each turn of the loop between their arrival and the end of the reading."""
    async def get_connection(*_):
        nonlocal theirs
        ours, theirs = socket.socketpair()
        theirs.send(SWITCHED)
        return ours

    theirs = None
    async with pool(get_connection=get_connection) as request:
        _, _, stream = await request(b'GET', 'http://a.test/', headers=UPGRADE)
        taken = []
        for number in range(10):
            task = asyncio.ensure_future(anext(stream))
            await turns(3)
            theirs.send(b'%d' % number)
            await turns(number)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                taken.append(await task)
        theirs.close()
        with contextlib.suppress(HttpDataError):
            async for chunk in stream:
                taken.append(chunk)
        assert b''.join(taken) == b'0123456789'


@SCOPES
@SCHEMES
@on_loops
async def test_after_101_a_send_that_is_cancelled_closes_the_connection(scheme, scope):
    async with switched(deaf, scheme, max_connections=1) as (server, request, stream):
        reader = asyncio.ensure_future(anext(stream))
        await turns(3)
        await scope(stream.send(BLOCKING))
        assert cancelling() == 0
        error = await failed(reader, HttpDataError, asyncio.CancelledError)
        assert str(error).startswith(at(server, 'sending the request: CancelledError', 'GET'))
        assert await failed(stream.send(b'a'), HttpDataError, None) is error
        assert await failed(anext(stream), HttpDataError, None) is error
        assert (await get(request, server.url))[2] == b'ok'


@SCHEMES
@on_loops
async def test_after_101_a_reading_that_is_closed_by_hand_has_taken_nothing(scheme):
    async with switched(echo, scheme) as (_, _, stream):
        coroutine = stream.__anext__()
        coroutine.send(None)
        coroutine.close()
        await stream.send(b'a')
        assert await anext(stream) == b'a'


STREAM_ENDS = {
    'plain': ('http', end_stream, None),
    'TLS, with close_notify': ('https', say_goodbye, None),
    'TLS, without': ('https', end_stream, ssl.SSLEOFError),
}


@pytest.mark.parametrize('ending', STREAM_ENDS)
@on_loops
async def test_after_101_the_peers_end_ends_the_iteration_and_the_connection(ending):
    def script(sock):
        if b'upgrade' not in receive_head(sock):
            sock.sendall(OK)
            return
        sock.sendall(SWITCHED + b'bye')
        end(sock)
        while socket.socket.recv(sock, 65536):
            pass
        closed.set()

    scheme, end, cause = STREAM_ENDS[ending]
    closed = threading.Event()
    with ThreadServer(script, context_of(scheme)) as server:
        async with pool(get_ssl_context=trusting, max_connections=1) as request:
            _, _, stream = await request(b'GET', server.url, headers=UPGRADE)
            assert await anext(stream) == b'bye'
            if cause is None:
                assert [chunk async for chunk in stream] == []
                await failed(stream.send(b'a'), HttpConnectionClosedError, EOFError, at(
                    server, 'sending the request: the peer has ended the connection', 'GET'))
                assert [chunk async for chunk in stream] == []
                await stream.aclose()
                assert [chunk async for chunk in stream] == []
            else:
                error = await failed(anext(stream), HttpConnectionClosedError, cause)
                assert str(error).startswith(at(server, 'reading the response body: ', 'GET'))
                for again in anext(stream), stream.send(b'a'):
                    assert await failed(again, HttpConnectionClosedError, cause) is error
            await until(closed.is_set)
            assert (await get(request, server.url))[2] == b'ok'


@on_loops
async def test_after_101_a_send_that_waits_fails_when_the_peers_end_is_read():
    """It has not been sent whole."""
    async def script(peer):
        peer.writer.transport.pause_reading()
        await go_on.wait()
        peer.writer.write_eof()
        await forever()

    go_on = asyncio.Event()
    async with switched(script) as (server, _, stream):
        sender = asyncio.ensure_future(stream.send(BLOCKING))
        reader = asyncio.ensure_future(buffered(stream))
        await turns(30)
        assert not sender.done()
        go_on.set()
        assert await reader == b''
        await failed(sender, HttpConnectionClosedError, EOFError, at(
            server, 'sending the request: the peer has ended the connection', 'GET'))


@SCHEMES
@on_loops
async def test_after_101_a_reset_is_told_by_what_met_it(scheme):
    async def script(peer):
        assert await peer.read(1) == b'a'
        peer.reset()
        raise ConnectionResetError

    for reads in True, False:
        with row(reads):
            async with switched(script, scheme) as (server, _, stream):
                await stream.send(b'a')
                if reads:
                    error = await failed(anext(stream), HttpConnectionClosedError, None)
                    assert str(error).startswith(at(server, 'reading the response body: ', 'GET'))
                else:
                    with pytest.raises(HttpConnectionClosedError) as caught:
                        while True:
                            await stream.send(b'b')
                            await turns(1)
                    error = caught.value
                    assert str(error).startswith(at(server, 'sending the request: ', 'GET'))
                assert await failed(stream.send(b'a'), HttpConnectionClosedError, None) is error
                assert await failed(anext(stream), HttpConnectionClosedError, None) is error


@SCHEMES
@on_loops
async def test_after_101_two_senders_or_two_readers_at_once_are_an_error_that_does_no_harm(scheme):
    go_on = asyncio.Event()
    async with switched(taking_all_after(go_on), scheme) as (server, _, stream):
        reader = asyncio.ensure_future(anext(stream))
        sender = asyncio.ensure_future(stream.send(BLOCKING))
        await turns(10)
        await failed(stream.send(b'x'), HttpDataError, RuntimeError, at(
            server, 'sending the request: RuntimeError: another task is sending', 'GET'))
        await failed(anext(stream), HttpDataError, RuntimeError, at(
            server, 'reading the response body: RuntimeError: the body is being read by another '
            'task', 'GET'))
        go_on.set()
        await sender
        assert await reader == b'all'


@on_loops
async def test_after_101_what_is_no_bytes_is_refused_and_does_no_harm():
    async with switched(echo) as (server, _, stream):
        for data in 'text', 5, None, [b'a']:
            name = type(data).__name__
            error = await failed(stream.send(data), HttpDataError, TypeError)
            assert str(error).startswith(at(server, 'sending the request: TypeError: ', 'GET'))
            assert name in str(error)
        await stream.send(b'ab')
        assert await anext(stream) == b'ab'


@SCHEMES
@on_loops
async def test_send_is_only_for_101_and_does_no_harm_elsewhere(scheme):
    async def refused(response, method='PUT'):
        await failed(response.send(b'x'), HttpDataError, RuntimeError, at(
            server, 'sending the request: RuntimeError: only after 101 Switching Protocols can '
            'more be sent' + ('' if response.request_sent else AFTER_HEAD), method))

    async def failing():
        yield b'a'
        await go_on.wait()
        raise ConnectionResetError('elsewhere')

    go_on = asyncio.Event()
    script = Early(PART)
    async with answered_early(script, failing, scheme) as (server, request, response):
        assert await anext(response) == b'ok'
        task = await reading(response)
        await refused(response)
        go_on.set()
        # What fails then is still told as what it is.
        await failed(task, HttpDataError, ConnectionResetError, at(
            server, 'the request body: ConnectionResetError: elsewhere'))
        _, _, response = await request(b'GET', server.url)
        await refused(response, 'GET')
        assert await buffered(response) == b'ok'
    script, go_on = Early(PART), asyncio.Event()
    body = Sending(b'a', go_on.wait)
    async with answered_early(script, body, scheme, length=1) as (server, _, response):
        await refused(response)
        assert await anext(response) == b'ok'
        task = await reading(response)
        go_on.set()
        await until(lambda: response.request_sent)
        await refused(response)
        script.peer.writer.transport.abort()
        error = await failed(task, HttpConnectionClosedError, None)
        assert str(error).startswith(at(server, 'reading the response body: '))


@SCHEMES
@on_loops
async def test_after_101_closing_ends_whoever_reads_and_sends(scheme):
    async with switched(deaf, scheme, max_connections=1) as (server, request, stream):
        reader = asyncio.ensure_future(anext(stream))
        sender = asyncio.ensure_future(stream.send(BLOCKING))
        await turns(10)
        await stream.aclose()
        text = at(server, f'reading the response body: {WAS_CLOSED}', 'GET')
        for ended in reader, sender, anext(stream), stream.send(b'a'):
            await failed(ended, HttpDataError, ConnectionAbortedError, text)
        await stream.aclose()
        assert (await get(request, server.url))[2] == b'ok'


@pytest.mark.parametrize('drop', [
    dropped_here, dropped_in_a_thread, dropped_in_a_cycle, dropped_with_its_reading])
@SCHEMES
@on_loops
async def test_after_101_a_response_that_is_dropped_closes_the_connection(scheme, drop):
    async def script(peer):
        received.append(await peer.closed())

    received = []
    async with switched(script, scheme, max_connections=1) as (server, request, stream):
        await stream.send(b'a')
        box = [stream]
        del stream
        await drop(box)
        del box
        gc.collect()
        await until(lambda: received)
        assert received == [b'a']
        assert (await get(request, server.url))[2] == b'ok'


@SCHEMES
@on_loops
async def test_after_101_the_pool_may_be_closed(scheme):
    async with Server(after_101(echo), context_of(scheme)) as server:
        request, close = Pool(get_ssl_context=trusting)
        _, _, stream = await request(b'GET', server.url, headers=UPGRADE)
        await close()
        await stream.send(b'a')
        assert await anext(stream) == b'a'
        await stream.aclose()
        await failed(request(b'GET', server.url), HttpConnectionError, None)


@SCHEMES
@on_loops
async def test_after_101_through_an_http_proxy(scheme):
    async def proxy(reader, writer):
        await reader.readuntil(b'\r\n\r\n')
        writer.write(b'HTTP/1.1 200 Connection established\r\n\r\n')
        ours, theirs = await asyncio.open_connection('127.0.0.1', server.port)
        await asyncio.gather(pass_on(reader, theirs), pass_on(ours, writer))

    async def pass_on(reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async with (Server(after_101(echo, b'hello'), context_of(scheme)) as server,
                listening(proxy) as address):
        request, close = proxied_pool(url_of_proxy(address), get_ssl_context=trusting)
        _, _, stream = await request(b'GET', f'{scheme}://name.test/', headers=UPGRADE)
        assert await anext(stream) == b'hello'
        for data in b'a', b'b' * 1000:
            await stream.send(data)
            received = b''
            while len(received) < len(data):
                received += await anext(stream)
            assert received == data
        await stream.aclose()
        await close()


@SCHEMES
@on_clock
async def test_a_101_that_comes_early_leaves_the_sending_to_the_request(scheme):
    """It is sent to its end, within `socket_timeout` for each progress."""
    async def script(peer):
        peer.writer.transport.pause_reading()
        await peer.reader.read(0)
        await peer.send(SWITCHED + b'hello')
        await go_on.wait()
        peer.writer.transport.resume_reading()
        received.append(await peer.read(len(BLOCKING)))
        await peer.closed()

    async def serve(peer):
        await peer.read_head()
        await script(peer)

    for is_read in True, False:
        with row(is_read):
            go_on, received = asyncio.Event(), []
            async with Server(serve, context_of(scheme)) as server, pool(
                    get_ssl_context=trusting, get_sock=small_but_fast) as request:
                upload = uploading(
                    request, server, closing_generator([], BLOCKING), length=len(BLOCKING),
                    headers=UPGRADE)
                if is_read:
                    task = asyncio.ensure_future(upload)
                    await passing(5)
                    assert not task.done()
                    go_on.set()
                    code, _, stream = await task
                    assert (code, stream.request_sent) == (b'101', True)
                    await until(lambda: received)  # noqa: B023
                    assert received == [BLOCKING]
                    assert await anext(stream) == b'hello'
                    await stream.aclose()
                else:
                    seconds, task = await measured(upload)
                    assert 10 <= seconds < 60
                    error = await failed(task, HttpDataError, TimeoutError)
                    assert str(error).startswith(at(
                        server, f'sending the request: {TIMED_OUT}'))


class WantingToRead(ssl.SSLSocket):
    """A TLS socket that must read before it can write, while `wants` is true."""

    wants = False

    def send(self, *args):
        if self.wants:
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, 'The operation did not complete')
        return super().send(*args)


@on_clock
async def test_a_tls_write_that_waits_to_read_has_socket_timeout_while_somebody_reads():
    """What comes is no progress of the sending, and no time runs between two readings."""
    async def wants_to_read():
        await go_on.wait()
        WantingToRead.wants = True

    for is_sent in True, False:
        with row(is_sent):
            go_on = asyncio.Event()
            script = Early(BEGUN)
            body = closing_generator([], b'a', wants_to_read, b'b')
            async with (Server(script, context_of('https')) as server,
                        pool(get_ssl_context=lambda: trusting(
                            sslsocket_class=WantingToRead)) as request):
                _, _, response = await uploading(request, server, body, length=2)
                go_on.set()
                for piece in b'g', b'o':
                    task = asyncio.ensure_future(anext(response))
                    await passing(9)
                    await script.peer.send(piece)
                    assert await task == piece
                    await passing(3600)
                task = asyncio.ensure_future(anext(response))
                await passing(9)
                assert not task.done()
                if is_sent:
                    WantingToRead.wants = False
                    await script.peer.send(b'o')
                    assert await task == b'o'
                    task = asyncio.ensure_future(anext(response))
                    await until(lambda: response.request_sent)  # noqa: B023
                    await script.peer.send(b'd')
                    assert await task == b'd'
                else:
                    await passing(1)
                    await failed(task, HttpDataError, TimeoutError, at(
                        server, f'sending the request: {TIMED_OUT}{AFTER_HEAD}'))
                    WantingToRead.wants = False


@on_loops
async def test_what_follows_an_early_101_is_not_lost_while_the_request_is_sent():
    """Although the 101 was there before anybody had to wait for it."""
    def script(sock):
        receive_head(sock)
        sock.sendall(SWITCHED)
        answered.set()
        assert begins.wait(PATIENCE)
        sock.sendall(b'hello')
        for _ in range(101):
            receive_exactly(sock, 100_000)
        receive_end(sock)

    async def body():
        yield bytes(100_000)
        # The loop waits, too.
        assert answered.wait(PATIENCE)
        asyncio.get_running_loop().call_later(0.01, begins.set)
        yield BLOCKING

    answered, begins = threading.Event(), threading.Event()
    with ThreadServer(script) as server:
        async with pool(get_sock=small_but_fast) as request:
            _, _, stream = await uploading(
                request, server, body, length=100_000 + len(BLOCKING), headers=UPGRADE)
            assert await anext(stream) == b'hello'


@SCHEMES
@on_loops
async def test_after_101_much_that_has_come_is_read_in_turns_with_other_tasks(scheme):
    async def script(peer):
        await peer.send(bytes(600_000))
        await peer.closed()

    async with switched(script, scheme, recv_bufsize=1000) as (_, _, stream):
        length = 0
        while length < 600_000:
            length += len(await anext(stream))
        await stream.aclose()


@on_loops
async def test_after_101_a_send_may_wait_for_room_beside_a_reading_that_has_to_write():
    async def script(peer):
        await peer.send(b'hello')
        assert await peer.read(len(BLOCKING)) == BLOCKING
        await peer.closed()

    async with Server(after_101(script), context_of('https')) as server, pool(
            get_ssl_context=wanting_to_write, get_sock=small_but_fast) as request:
        _, _, stream = await request(b'GET', server.url, headers=UPGRADE)
        await turns(30)
        WantingToWrite.wants = 1
        reader = asyncio.create_task(anext(stream))
        sender = asyncio.create_task(stream.send(BLOCKING))
        assert await reader == b'hello'
        await sender
        assert WantingToWrite.wants == 0
        await stream.aclose()
