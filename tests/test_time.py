"""`socket_timeout` and `keep_alive_timeout`: what they count, and what they do not."""

import asyncio
import contextlib
import itertools
import socket
import threading

import pytest

from lowhaio import HttpDataError, buffered, streamed
from tests.harness import (
    CHUNKED,
    CLOSE_DELIMITED,
    CONTINUE,
    LARGE,
    OK,
    PATIENCE,
    SCHEMES,
    UNFINISHED,
    UPLOAD,
    Answering,
    Server,
    Sockets,
    ThreadServer,
    chunked,
    context_of,
    deaf_server,
    ends_after,
    failed,
    failure,
    get,
    head,
    holding,
    of_length,
    on_clock,
    measured,
    passing,
    peer_prefix,
    pool,
    receive_end,
    row,
    small_sending_sock,
    small_sock,
    trusting,
    turns,
    until,
    where,
    with_length,
)


# -------------------------------------------------------------------------- the time of a response


@on_clock
async def test_a_response_that_stops_coming_fails_in_time():
    async def fail(sent, phase):
        script = holding(sent)
        async with Server(script) as server, pool(socket_timeout=5) as request:
            error = await failure(
                await ends_after(5, get(request, server.url), lambda: script.sent))
            assert (type(error), type(error.__cause__)) == (HttpDataError, TimeoutError)
            assert str(error) == (f'{where(server)}reading the response {phase}: TimeoutError: '
                                  'socket_timeout, 5 seconds, passed')
            assert (error.reused, error.response_started) == (False, bool(sent))
            assert asyncio.current_task().cancelling() == 0
            await until(lambda: script.closed)

    for sent, phase in (
            (b'', 'head'), (b'HTTP/1.1 200', 'head'), (CONTINUE, 'head'), (UNFINISHED, 'body'),
            (chunked(b'2\r\n'), 'body'), (chunked(b'0\r\n'), 'body'), (head(), 'body')):
        with row(sent):
            await fail(sent, phase)


@pytest.mark.parametrize('before', [b'', CONTINUE], ids=['first', 'after an interim one'])
@on_clock
async def test_a_head_in_trickles_fails_in_time(before):
    async def script(peer):
        await peer.read_head()
        await peer.send(before + b'HTTP/1.1 200 ')
        while not peer.reader.at_eof():
            await peer.send(b'x')
            trickles.append(True)
            await asyncio.sleep(0.1)

    trickles = []
    async with Server(script) as server, pool(socket_timeout=5) as request:
        error = await failure(
            await ends_after(5, request(b'GET', server.url), lambda: trickles))
        assert (type(error), type(error.__cause__)) == (HttpDataError, TimeoutError)
        assert error.response_started


@on_clock
async def test_the_time_of_a_head_does_not_begin_with_its_first_byte():
    is_sent = asyncio.Event()

    async def script(peer):
        await peer.read_head()
        is_sent.set()
        await asyncio.sleep(2)
        await peer.send(b'H')
        await peer.closed()

    async with Server(script) as server, pool(socket_timeout=5) as request:
        await failed(
            await ends_after(5, request(b'GET', server.url), is_sent.is_set),
            HttpDataError, TimeoutError)


@on_clock
async def test_interim_responses_and_reads_of_a_body_have_a_time_each():
    slow = [[CONTINUE] * 5 + [OK], [head(b'content-length: 5'), *[b'x'] * 5]]
    whole = [b'ok', b'xxxxx']

    async def script(peer):
        for pieces in slow:
            await peer.read_head()
            for piece in pieces:
                await passing(4)
                await peer.send(piece)

    async with Server(script) as server, pool(socket_timeout=5) as request:
        for body in whole:
            assert (await get(request, server.url))[2] == body


@on_clock
async def test_the_time_of_the_consumer_is_not_counted():
    async with Server(holding(OK[:-1], OK[-1:])) as server, pool(socket_timeout=5) as request:
        _, _, body = await request(b'GET', server.url)
        await passing(15)
        assert await buffered(body) == b'ok'


@pytest.mark.parametrize('keep_alive_timeout', [2, 0])
@on_clock
async def test_keep_alive_never_raises_the_time_that_a_connection_idles(keep_alive_timeout):
    sockets = Sockets()
    raw = with_length(b'connection: keep-alive', b'keep-alive: timeout=1000')
    async with Server(Answering(raw)) as server, pool(
            keep_alive_timeout=keep_alive_timeout, get_sock=sockets) as request:
        await get(request, server.url)
        if keep_alive_timeout:
            await passing(1.999)
            assert sockets.socks[0].fileno() != -1
            await passing(0.001)
        assert sockets.socks[0].fileno() == -1


@on_clock
async def test_keep_alive_lowers_the_time_that_a_connection_idles_to_a_second_less():
    fields = ((b'keep-alive: timeout=2',), (b'Keep-Alive: max=9, Timeout=2',),
              (b'connection: keep-alive', b'keep-alive: max=9', b'keep-alive: timeout=2'))
    loop = asyncio.get_running_loop()
    idled = []

    async def script(peer):
        await peer.read_head()
        await peer.send(with_length(*fields[peer.index]))
        started = loop.time()
        await peer.closed()
        idled.append(loop.time() - started)

    async with Server(script) as server, pool() as request:
        await asyncio.gather(*[get(request, server.url) for _ in fields])
        await passing(1)
        await until(lambda: len(idled) == len(fields))
    assert idled == [1] * len(fields)


# ---------------------------------------------------------------------------------------- timeouts

PASSED = 'TimeoutError: socket_timeout, 5 seconds, passed'
IN_HEAD = f', reading the response head: {PASSED}'
IN_BODY = f', reading the response body: {PASSED}'

SILENCES = {
    'no byte of the head': ((), False, IN_HEAD),
    'part of the head': ((b'HTTP/1.1 200 OK\r\nx',), True, IN_HEAD),
    'no byte after an interim response': (
        (b'HTTP/1.1 102 Processing\r\n\r\n',), True, IN_HEAD),
    'no byte of the body': ((OK[:-2],), True, IN_BODY),
    'part of the body': ((OK[:-1],), True, IN_BODY),
    'part of a chunk': ((CHUNKED[:-3],), True, IN_BODY),
    'no trailer section': ((CHUNKED + b'0\r\n',), True, IN_BODY),
    'no end of the stream': ((CLOSE_DELIMITED,), True, IN_BODY),
}


@SCHEMES
@on_clock
async def test_a_server_that_falls_silent_is_an_error(scheme):
    cases = dict(enumerate(SILENCES))
    sent, ends = [], []

    async def script(peer):
        await peer.read_head()
        await peer.send(OK)
        number = int((await peer.read_head()).split()[1][1:])
        await peer.send(*SILENCES[cases[number]][0])
        sent.append(number)
        ends.append(await peer.closed())

    async def check(request, number):
        _, is_started, text = SILENCES[cases[number]]
        with row(cases[number]):
            error = await failed(
                await ends_after(5, get(request, f'{server.url}{number}'), lambda: number in sent),
                HttpDataError, TimeoutError, peer_prefix(server) + text)
            assert (error.reused, error.response_started) == (True, is_started)

    options = {'get_ssl_context': trusting, 'socket_timeout': 5, 'keep_alive_timeout': 1000}
    async with Server(script, context_of(scheme)) as server, pool(**options) as request:
        await asyncio.gather(*[get(request, server.url) for _ in cases])
        for number in cases:
            await check(request, number)
        await until(lambda: ends == [b''] * len(cases))


@SCHEMES
@on_clock
async def test_a_head_that_trickles_can_not_extend_its_time(scheme):
    trickles, ends = [], []

    async def script(peer):
        await peer.read_head()
        await peer.send(b'HTTP/1.1 200 OK\r\nx: ')
        try:
            while not peer.reader.at_eof():
                await peer.send(b'y')
                trickles.append(True)
                await asyncio.sleep(0.1)
        except RuntimeError:
            pass  # from uvloop, once the client has closed
        finally:
            ends.append(True)

    options = {'get_ssl_context': trusting, 'socket_timeout': 5}
    async with Server(script, context_of(scheme)) as server, pool(**options) as request:
        error = await failed(
            await ends_after(5, get(request, server.url), lambda: trickles),
            HttpDataError, TimeoutError, peer_prefix(server) + IN_HEAD)
        assert error.response_started
        await passing(0.1)
        await until(lambda: ends)


@on_clock
async def test_each_interim_response_gives_the_head_its_time_anew():
    async def script(peer):
        await peer.read_head()
        for _ in range(4):
            await passing(4)
            await peer.send(b'HTTP/1.1 102 Processing\r\n\r\n')
        await peer.send(OK)

    async with Server(script) as server, pool(socket_timeout=5) as request:
        assert (await get(request, server.url))[2] == b'ok'


@on_clock
async def test_an_interim_response_that_trickles_can_not_extend_the_time_of_sending():
    with deaf_server() as server:
        async with pool(get_sock=small_sock, socket_timeout=5) as request:
            task = asyncio.create_task(request(
                b'PUT', server.url, headers=of_length(len(LARGE)), body=streamed(LARGE)))
            await turns(4)
            with server.accept() as accepted:
                accepted.send(b'HTTP/1.1 103 Early Hints\r\na: ')
                # The kernel may take more than once, and each time is progress.
                seconds = 0
                while not task.done() and seconds < 100:
                    accepted.send(b'a')
                    await passing(1)
                    seconds += 1
                assert 5 <= seconds < 100
                error = await failed(task, HttpDataError, TimeoutError)
    assert error.response_started


@on_clock
async def test_each_read_of_a_body_has_its_own_time():
    async def script(peer):
        await peer.read_head()
        await peer.send(b'HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n')
        for _ in range(4):
            await passing(4)
            await peer.send(b'y')

    async with Server(script) as server, pool(socket_timeout=5) as request:
        assert (await get(request, server.url))[2] == b'yyyy'


@on_clock
async def test_the_time_in_which_nobody_reads_a_body_does_not_count():
    go_on = asyncio.Event()

    async def script(peer):
        await peer.read_head()
        await peer.send(OK[:-1])
        await go_on.wait()
        await peer.send(OK[-1:])
        await Answering(OK)(peer)

    async with Server(script) as server, pool(socket_timeout=5) as request:
        _, _, body = await request(b'GET', server.url)
        await passing(6)
        assert await anext(body) == b'o'
        await passing(6)
        go_on.set()
        assert await buffered(body) == b'k'
        assert (await get(request, server.url))[2] == b'ok'
        assert len(server.peers) == 1


@on_clock
async def test_the_time_of_the_callers_own_body_does_not_count():
    answering = Answering(OK)

    async def body():
        for _ in range(2):
            await passing(6)
            yield b'x'
        await passing(6)

    async with Server(answering) as server, pool(socket_timeout=5) as request:
        code, _, response = await request(
            b'PUT', server.url, headers=((b'content-length', b'2'),), body=body)
        assert (code, await buffered(response)) == (b'200', b'ok')
    assert answering.bodies == [b'xx']


@SCHEMES
@on_clock
async def test_each_progress_of_sending_has_its_own_time(scheme):
    """All of it takes longer than `socket_timeout`."""
    data = UPLOAD[-500_000:]
    pauses, received = threading.Semaphore(0), []

    def script(sock):
        for _ in range(4):
            assert pauses.acquire(timeout=PATIENCE)
            # More than what is kept between the two ends: the client goes on to send.
            left = 50_000
            while left:
                left -= len(sock.recv(left))
            received.append(True)
        end = b''
        while not end.endswith(b'the end'):
            end = end[-10:] + sock.recv(10_000)
        sock.sendall(OK)
        receive_end(sock)

    with ThreadServer(script, context_of(scheme)) as server:
        server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        options = {'get_ssl_context': trusting, 'socket_timeout': 5,
                   'get_sock': small_sending_sock}
        async with pool(**options) as request:
            task = asyncio.create_task(request(
                b'PUT', server.url, headers=((b'content-length', b'%d' % len(data)),),
                body=streamed(data)))
            for number in range(4):
                await passing(4)
                pauses.release()
                await until(lambda: len(received) > number)  # noqa: B023
            _, _, body = await task
            assert await buffered(body) == b'ok'


@SCHEMES
@on_clock
async def test_an_interim_response_that_trickles_in_is_no_progress_of_sending(scheme):
    trickled, is_over = [], threading.Event()

    def script(sock):
        with contextlib.suppress(OSError):
            for number in itertools.cycle(b'HTTP/1.1 103 Early Hints\r\n\r\n'):
                sock.sendall(bytes([number]))
                trickled.append(number)
                if is_over.wait(0.002):
                    return

    with ThreadServer(script, context_of(scheme)) as server:
        options = {'get_ssl_context': trusting, 'socket_timeout': 5,
                   'get_sock': small_sending_sock}
        server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        async with pool(**options) as request:
            uploading = asyncio.create_task(request(
                b'PUT', server.url, headers=((b'content-length', b'%d' % len(UPLOAD)),),
                body=streamed(UPLOAD)))
            # The kernel may take more than once, and each time is progress. It ends all the same.
            seconds = 0
            while not uploading.done() and seconds < 100:
                await passing(1)
                seconds += 1
                seen = len(trickled)
                await until(lambda: uploading.done() or len(trickled) > seen + 10)  # noqa: B023
            assert 5 <= seconds < 100
            await failed(
                uploading, HttpDataError, TimeoutError,
                f'{peer_prefix(server, "PUT")}, sending the request: {PASSED}')
            is_over.set()


@SCHEMES
@on_clock
async def test_a_server_that_does_not_read_is_an_error(scheme):
    is_there, is_over = threading.Event(), threading.Event()

    def script(sock):
        is_there.set()
        is_over.wait(PATIENCE)
        ends.append(receive_end(sock))

    ends = []
    with ThreadServer(script, context_of(scheme)) as server:
        options = {'get_ssl_context': trusting, 'socket_timeout': 5,
                   'get_sock': small_sending_sock}
        server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        async with pool(**options) as request:
            uploading = request(
                b'PUT', server.url, headers=((b'content-length', b'%d' % len(UPLOAD)),),
                body=streamed(UPLOAD))
            seconds, task = await measured(uploading, is_there.is_set)
            error = await failed(
                task, HttpDataError, TimeoutError,
                f'{peer_prefix(server, "PUT")}, sending the request: {PASSED}')
            assert 5 <= seconds < 60
            assert (error.reused, error.response_started) == (False, False)
            is_over.set()
