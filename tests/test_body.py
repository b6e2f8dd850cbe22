"""The body of a response: how it is read, closed, dropped and cancelled, and what that means for
its connection.
"""

import asyncio
import contextlib
import gc
import itertools
import re
import select
import socket
import struct
import threading
import time

import pytest

from lowhaio import (
    HttpConnectionClosedError,
    HttpDataError,
    Pool,
    buffered,
    empty_async_iterator,
    has_arrived,
)
from tests.harness import (
    CLOSED,
    CONTINUE,
    EVIL,
    LOOPS,
    MAY_BE_TLS,
    NO_CONTENT,
    OK,
    PATIENCE,
    SCHEMES,
    UNFINISHED,
    WAS_CLOSED,
    Answering,
    Server,
    Sockets,
    chunked,
    context_of,
    cut_into_bytes,
    failure,
    get,
    head,
    holding,
    on_loops,
    on_one_loop,
    open_descriptors,
    pool,
    read_before,
    row,
    trusting,
    turns,
    until,
    until_idle,
    where,
    with_length,
)


# ----------------------------------------------------------------------------------------- reading


@on_loops
async def test_an_error_tells_method_origin_and_peer_and_never_the_path():
    async with Server(Answering(b'hello\r\n\r\n')) as server, pool() as request:
        for method in b'HEAD', b'X-Y':
            error = await failure(request(method, server.origin + '/secret?secret#secret'))
            assert type(error) is HttpDataError
            assert str(error) == (
                f'{method.decode()} http://127.0.0.1:{server.port} (peer 127.0.0.1:{server.port})'
                ', reading the response head: bad status line: expected HTTP/1.x, '
                "a space, three digits and a reason, got b'hello\\r'")


ON_A_REUSED_CONNECTION = {
    'no byte': (b'', HttpConnectionClosedError, EOFError, False,
                f'head: {CLOSED}, after no byte of it'),
    'a part of the head': (b'HTTP', HttpConnectionClosedError, EOFError, True,
                           f"head: {CLOSED}, after b'HTTP'"),
    'a bad field': (head(b'a'), HttpDataError, ValueError, True, 'head: bad field line: expected '
                    r"""a token, ":" and a value, got b'a\r'"""),
    'a part of the body': (
        UNFINISHED, HttpConnectionClosedError, EOFError, True,
        f'body: {CLOSED}, 98 bytes before the end that content-length told'),
}


@pytest.mark.parametrize('second', ON_A_REUSED_CONNECTION)
@on_loops
async def test_an_error_tells_that_the_connection_had_served_before(second):
    raw, kind, cause, response_started, text = ON_A_REUSED_CONNECTION[second]

    async def script(peer):
        await peer.read_head()
        await peer.send(CONTINUE + OK)
        await peer.read_head()
        await peer.send(raw)

    async with Server(script) as server, pool() as request:
        await get(request, server.url)
        error = await failure(get(request, server.url))
        assert (type(error), type(error.__cause__)) == (kind, cause)
        assert (error.reused, error.response_started) == (True, response_started)
        assert str(error) == f'{where(server)}reading the response {text}'
        assert len(server.peers) == 1


@on_loops
async def test_a_reset_is_an_end_too():
    cases = [(b'', 'head'), (b'HTTP/1.1', 'head'), (UNFINISHED, 'body'), (head(), 'body')]

    async def script(peer):
        await peer.read_head()
        await peer.send(cases[peer.index][0])
        peer.reset()

    async with Server(script) as server, pool() as request:
        for sent, phase in cases:
            error = await failure(get(request, server.url))
            assert (type(error), type(error.__cause__)) == (
                HttpConnectionClosedError, ConnectionResetError)
            assert (error.reused, error.response_started) == (False, bool(sent))
            assert re.fullmatch(
                re.escape(f'{where(server)}reading the response {phase}: ConnectionResetError: ')
                + r'\[Errno \d+\] Connection reset by peer' + re.escape(MAY_BE_TLS * (not sent)),
                str(error))


@on_loops
async def test_a_body_is_its_own_iterator_and_stays_ended():
    async with Server(Answering(OK)) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        assert aiter(body) is body
        assert [chunk async for chunk in body] == [b'ok']
        for _ in range(2):
            with pytest.raises(StopAsyncIteration):
                await anext(body)
        assert await buffered(body) == b''
        await read_before(body)
        with pytest.raises(StopAsyncIteration):
            await anext(body)
        await read_before(body)


FRAMINGS = {
    'length': (b'content-length: 12', lambda piece: piece, b'', True),
    'chunks': (b'transfer-encoding: chunked', lambda piece: b'%x\r\n%b\r\n' % (len(piece), piece),
               b'0\r\nA: b\r\n\r\n', True),
    'end': (b'connection: close', lambda piece: piece, b'', False),
}


@pytest.mark.parametrize('framing', FRAMINGS)
@on_loops
async def test_a_body_yields_what_has_come_and_no_empty_chunks(framing):
    field, encoded, end, is_kept = FRAMINGS[framing]
    wanted = asyncio.Queue()

    async def script(peer):
        await peer.read_head()
        await peer.send(head(field))
        while (piece := await wanted.get()):
            await peer.send(*cut_into_bytes(encoded(piece)))
        await peer.send(*cut_into_bytes(end))
        if is_kept:
            await peer.read_head()
            await peer.send(OK)

    async with Server(script) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        for piece in b'hell', b'o, w', b'orld':
            wanted.put_nowait(piece)
            for byte in piece:
                # One at a time as they came, each before the next is there.
                assert await anext(body) == bytes([byte])
            assert body.trailers == ()
        wanted.put_nowait(b'')
        with pytest.raises(StopAsyncIteration):
            await anext(body)
        assert body.trailers == (((b'a', b'b'),) if framing == 'chunks' else ())
        if is_kept:
            await get(request, server.url)
            assert len(server.peers) == 1


@on_loops
async def test_a_chunk_is_no_longer_than_one_read():
    raw = head(b'content-length: 1000') + bytes(range(250)) * 4
    async with Server(Answering(raw)) as server, pool(recv_bufsize=100) as request:
        _, _, body = await request(b'GET', server.url)
        chunks = [chunk async for chunk in body]
    assert b''.join(chunks) == bytes(range(250)) * 4
    assert max(map(len, chunks)) == 100


@on_loops
async def test_whether_all_of_a_body_has_arrived():
    raw = chunked(b'2\r\nok\r\n') + b'1\r\n!\r\n0\r\n\r\n'
    async with Server(Answering(raw)) as server:
        async with pool() as request:
            _, _, body = await request(b'GET', server.url)
            assert has_arrived(body)
            assert not has_arrived(chunk async for chunk in body)
            assert await buffered(body) == b'ok!'
        async with pool(recv_bufsize=len(raw) - 11) as request:
            _, _, body = await request(b'GET', server.url)
            assert not has_arrived(body)
            assert [await anext(body), await anext(body)] == [b'ok', b'!']
            assert has_arrived(body)
    async with Server(holding(UNFINISHED)) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        await body.aclose()
        assert not has_arrived(body)


@on_loops
async def test_buffered_takes_what_is_left_of_any_iterator_of_bytes():
    async def chunks():
        for chunk in (b'a', b'', bytearray(b'b'), memoryview(b'c')):
            yield chunk

    assert await buffered(chunks()) == b'abc'
    assert await buffered(empty_async_iterator()) == b''
    raw = chunked(b'2\r\nok\r\n') + b'1\r\n!\r\n0\r\n\r\n'
    async with Server(Answering(raw)) as server:
        async with pool(recv_bufsize=len(raw) - 11) as request:
            _, _, body = await request(b'GET', server.url)
            assert await anext(body) == b'ok'
            assert await buffered(body) == b'!'
            await read_before(body)
        async with pool() as request:
            _, _, body = await request(b'GET', server.url)
            assert await buffered(body) == b'ok!'
            await read_before(body)


WHOLE = {
    'length': OK,
    'chunks': chunked(b'2\r\nok\r\n0\r\na: b\r\n\r\n'),
    'no body': head(start=NO_CONTENT),
}

OK_AGAIN = OK[:-2] + b'no'

AGAIN = {
    # Method, response, code, body: of one origin, whose last head is remembered.
    'the same': [(b'GET', OK, b'200', b'ok'), (b'GET', OK_AGAIN, b'200', b'no')],
    'for another method': [
        (b'GET', OK, b'200', b'ok'), (b'HEAD', OK[:-2], b'200', b''), (b'GET', OK, b'200', b'ok')],
    'after an interim one': [
        (b'GET', OK, b'200', b'ok'), (b'GET', CONTINUE + OK_AGAIN, b'200', b'no')],
    'the other line end': [
        (b'GET', OK, b'200', b'ok'), (b'GET', OK.replace(b'\r\n', b'\n'), b'200', b'ok')],
    'a longer one': [
        (b'GET', with_length(), b'200', b'ok'), (b'GET', with_length(b'a: b'), b'200', b'ok'),
        (b'GET', with_length(), b'200', b'ok')],
    'another code': [
        (b'GET', with_length(), b'200', b'ok'),
        (b'GET', with_length(start=b'HTTP/1.1 404 OK'), b'404', b'ok')],
    'chunked': [
        (b'GET', chunked(b'2\r\nok\r\n0\r\n\r\n'), b'200', b'ok'),
        (b'GET', chunked(b'1\r\n!\r\n0\r\n\r\n'), b'200', b'!')],
}


@pytest.mark.parametrize('exchanges', AGAIN.values(), ids=AGAIN)
@pytest.mark.parametrize('is_cut', [False, True], ids=['whole', 'byte by byte'])
@pytest.mark.parametrize('is_kept', [False, True], ids=['many connections', 'one connection'])
@on_one_loop
async def test_a_head_that_comes_again_is_taken_for_what_it_is(exchanges, is_cut, is_kept):
    responses = iter(exchanges)

    async def script(peer):
        for _, response, _, _ in responses:
            await peer.read_head()
            await peer.send(*([bytes([byte]) for byte in response] if is_cut else [response]))
            if not is_kept:
                break
        assert await peer.closed() == b''

    options = {} if is_kept else {'keep_alive_timeout': 0}
    async with Server(script) as server, pool(**options) as request:
        for method, response, code, content in exchanges:
            got, headers, body = await request(method, server.url)
            assert (got, await buffered(body)) == (code, content)
            assert (b'a', b'b') in headers or b'a: b' not in response
        assert len(server.peers) == (1 if is_kept else len(exchanges))


@on_loops
async def test_more_different_fields_than_are_remembered():
    fields = tuple((b'a-%d' % number, b'%d' % number) for number in range(1000))
    raw = head(*(b'%b: %b' % field for field in fields), b'content-length: 0')
    async with Server(Answering(raw)) as server, pool(max_header_length=len(raw)) as request:
        for _ in range(2):
            _, headers, _ = await request(b'GET', server.url)
            assert headers == (*fields, (b'content-length', b'0'))


@pytest.mark.parametrize('framing', WHOLE)
@on_loops
async def test_a_body_that_came_with_its_head_has_released_its_connection(framing):
    script = Answering(WHOLE[framing], OK)
    async with Server(script) as server, pool() as request:
        _, _, first = await request(b'GET', server.url)
        assert first.trailers == (((b'a', b'b'),) if framing == 'chunks' else ())
        _, _, second = await request(b'GET', server.url)
        assert script.connections == [0, 0]
        assert await buffered(second) == b'ok'
        assert await buffered(first) == (b'' if framing == 'no body' else b'ok')


@on_loops
async def test_a_connection_is_released_at_the_last_byte_parsed():
    async def script(peer):
        await peer.read_head()
        await peer.send(OK[:-1], OK[-1:])
        await peer.read_head()
        await peer.send(OK)

    async with Server(script) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        assert await anext(body) == b'o'
        assert await anext(body) == b'k'
        await get(request, server.url)  # the first body has not been asked for its end
        assert len(server.peers) == 1
        with pytest.raises(StopAsyncIteration):
            await anext(body)


@on_loops
async def test_a_body_that_came_whole_can_be_closed_or_dropped_without_harm():
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        del body
        _, _, body = await request(b'GET', server.url)
        assert await anext(body) == b'ok'
        await body.aclose()
        await body.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(body)
        # Nor does it harm who has the connection now.
        _, _, first = await request(b'GET', server.url)
        _, _, second = await request(b'GET', server.url)
        await first.aclose()
        del first
        assert await buffered(second) == b'ok'
        await get(request, server.url)
    assert script.connections == [0, 0, 0, 0, 0]


async def closed(server, *readings, method='GET'):
    """Each tells the same: that the body was closed before its end."""
    errors = [await failure(reading) for reading in readings]
    for error in errors:
        assert error is errors[0]
        assert (type(error), type(error.__cause__)) == (HttpDataError, ConnectionAbortedError)
        assert str(error) == f'{where(server, method)}reading the response body: {WAS_CLOSED}'
        assert error.response_started


@on_loops
async def test_a_body_closed_unfinished_closes_its_connection():
    for raw in (UNFINISHED, head(b'content-length: 5'), chunked(b'2\r\nok\r\n'), head(),
                chunked(b'0\r\n')):
        script = holding(raw)
        async with Server(script) as server, pool() as request:
            _, _, body = await request(b'GET', server.url)
            for _ in range(2):
                await body.aclose()
                await closed(server, anext(body), buffered(body), anext(body))
                assert body.trailers == ()
            await until(lambda script=script: script.closed)


async def all_of(body):
    """By an `async for`, as `buffered` reads it."""
    return b''.join([chunk async for chunk in body])


@SCHEMES
@pytest.mark.parametrize('read', [anext, all_of, buffered])
@on_loops
async def test_a_body_closed_before_it_was_read_is_never_taken_for_an_empty_one(scheme, read):
    for raw in (OK, OK[:-2], UNFINISHED, chunked(b'2\r\nok\r\n'),
                chunked(b'2\r\nok\r\n0\r\n\r\n'), head() + b'ok'):
        with row(raw):
            async with Server(holding(raw), context_of(scheme)) as server, pool(
                    get_ssl_context=trusting) as request:
                _, _, body = await request(b'GET', server.url)
                await body.aclose()
                await closed(server, read(body), read(body), anext(body), buffered(body))


@pytest.mark.parametrize('read', [all_of, buffered])
@on_loops
async def test_a_body_closed_as_its_bytes_come_fails_its_reader(read):
    """In whatever turn: also if the loop has read them already, but the reader has not gone on."""
    sockets = Sockets()

    async def script(peer):
        await peer.read_head()
        await peer.send(UNFINISHED)
        await peer.closed()

    outcomes = []
    for more, number in itertools.product((b'x', b'x' * 98), range(6)):
        with row(f'{len(more)} bytes, {number} turns'):
            async with Server(script) as server, pool(get_sock=sockets) as request:
                _, _, body = await request(b'GET', server.url)
                reading = asyncio.create_task(read(body))
                await turns(5)
                sockets.send_to_last(server.peers[0], more)
                await turns(number)
                outcomes.append(reading.done())
                await body.aclose()
                if reading.done():
                    assert await reading == b'ok' + more
                else:
                    await closed(server, reading, buffered(body), anext(body))
                # It is not one that could be used again.
                assert sockets.socks[-1].fileno() == -1 or reading.done()
    # Only all of them end it.
    assert outcomes[:6] == [False] * 6
    assert outcomes[6:] == sorted(outcomes[6:])
    assert (outcomes[6], outcomes[-1]) == (False, True)


@SCHEMES
@on_loops
async def test_a_body_closed_while_its_reader_has_a_chunk_fails_it(scheme):
    async def read():
        async for chunk in body:
            chunks.append(chunk)
            await goes_on.wait()

    for raw in (UNFINISHED, UNFINISHED + b'x' * 90, chunked(b'2\r\nok\r\n'), head() + b'ok'):
        chunks, goes_on = [], asyncio.Event()
        async with Server(holding(raw), context_of(scheme)) as server, pool(
                get_ssl_context=trusting) as request:
            _, _, body = await request(b'GET', server.url)
            reading = asyncio.create_task(read())
            await until(lambda: chunks)  # noqa: B023
            await body.aclose()
            goes_on.set()
            await closed(server, reading, buffered(body))


@on_loops
async def test_a_body_that_was_read_stays_one_that_ended_when_it_is_closed():
    async with Server(Answering(OK)) as server, pool() as request:
        for read in all_of, buffered:
            _, _, body = await request(b'GET', server.url)
            assert await read(body) == b'ok'
            await body.aclose()
            with pytest.raises(StopAsyncIteration):
                await anext(body)
            if read is buffered:
                await read_before(body)
            else:
                assert await buffered(body) == b''
        # There was nothing to be read.
        _, _, body = await request(b'HEAD', server.url)
        await body.aclose()
        assert await buffered(body) == b''


@on_loops
async def test_a_body_closed_after_its_connection_serves_another_tells_of_its_own_request():
    async with Server(Answering(OK)) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        await request(b'POST', server.url)
        await body.aclose()
        await closed(server, anext(body), buffered(body))
        assert (await get(request, server.url))[2] == b'ok'


@on_loops
async def test_a_cancellation_of_a_reader_whose_body_is_closed_wins():
    script = holding(UNFINISHED)
    async with Server(script) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        reading = asyncio.create_task(buffered(body))
        await turns(5)
        await body.aclose()
        reading.cancel('why')
        with pytest.raises(asyncio.CancelledError) as caught:
            await reading
        assert caught.value.args == ('why',)
        await closed(server, anext(body))


@on_loops
async def test_a_body_closed_while_it_is_read_fails_the_reading():
    script = holding(UNFINISHED)
    async with Server(script) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        reading = asyncio.create_task(buffered(body))
        await turns(5)
        await body.aclose()
        await closed(server, reading)
        await until(lambda: script.closed)


@on_loops
async def test_a_body_that_failed_fails_the_same_again():
    raw = chunked(b'2\r\nok\r\n'), b'x\r\n'
    script = holding(*raw)
    async with Server(script) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        assert await anext(body) == b'ok'
        error = await failure(anext(body))
        assert (type(error), type(error.__cause__)) == (HttpDataError, ValueError)
        assert await failure(anext(body)) is error
        assert await failure(buffered(body)) is error
        assert body.trailers == ()
        await body.aclose()
        assert await failure(anext(body)) is error
        await until(lambda: script.closed)


async def refused(server, *readings):
    for reading in readings:
        error = await failure(reading)
        assert (type(error), type(error.__cause__)) == (HttpDataError, RuntimeError)
        assert str(error) == (f'{where(server)}reading the response body: RuntimeError: '
                              'the body is being read by another task')


@SCHEMES
@on_loops
async def test_a_second_reader_at_the_same_time_is_refused_and_the_first_reads_on(scheme):
    async def script(peer):
        await peer.read_head()
        await peer.send(head(b'content-length: 6') + b'ok')
        for piece in b'ay', b'!!':
            await goes_on.wait()
            goes_on.clear()
            await peer.send(piece)
        await peer.read_head()
        await peer.send(OK)

    goes_on = asyncio.Event()
    async with Server(script, context_of(scheme)) as server, pool(
            get_ssl_context=trusting) as request:
        _, _, body = await request(b'GET', server.url)
        assert await anext(body) == b'ok'
        for piece in b'ay', b'!!':
            first = asyncio.create_task(anext(body))
            await turns(5)
            await refused(server, anext(body), buffered(body), all_of(body))
            goes_on.set()
            assert await first == piece
        with pytest.raises(StopAsyncIteration):
            await anext(body)
        # Its connection has been released.
        assert (await get(request, server.url))[2] == b'ok'
        assert len(server.peers) == 1


@on_loops
async def test_a_body_read_by_two_tasks_at_once_never_harms_another_request():
    sockets = Sockets()

    async def script(peer):
        await peer.read_head()
        if peer.index == 0:
            await peer.send(head(b'content-length: 4') + b'ok')
            await peer.read_head()
        await peer.send(OK)

    async with Server(script) as server, pool(get_sock=sockets) as request:
        _, _, body = await request(b'GET', server.url)
        assert await anext(body) == b'ok'
        first = asyncio.create_task(anext(body, None))
        await turns(3)
        sockets.send_to_last(server.peers[0], b'ay')
        await refused(server, anext(body))
        assert await first == b'ay'
        assert (await get(request, server.url))[2] == b'ok'
        assert len(server.peers) == 1


@contextlib.asynccontextmanager
async def body_before_a_turn():
    """A body of which so much was read without a wait that the next reading begins with a turn
    for others. Nothing more comes."""
    sockets = Sockets()
    length = 256 * 1024
    has_head = threading.Event()

    def serve(listener):
        peer, _ = listener.accept()
        with peer:
            peer.recv(1000)
            peer.sendall(head(b'content-length: %d' % (length + 1)))
            has_head.wait(PATIENCE)
            peer.sendall(b'x' * length)
            peer.recv(1000)

    with socket.create_server(('127.0.0.1', 0)) as listener:
        async with pool(get_sock=sockets) as request:
            serving = asyncio.create_task(asyncio.to_thread(serve, listener))
            _, _, body = await request(
                b'GET', f'http://127.0.0.1:{listener.getsockname()[1]}/')
            has_head.set()
            left = length
            while left:
                # So that it does not have to wait in the loop, which gives turns too.
                select.select(sockets.socks, [], [], PATIENCE)
                left -= len(await anext(body))
            try:
                yield body
            finally:
                await body.aclose()
                await serving


@on_loops
async def test_a_body_read_by_two_tasks_at_once_never_leaves_one_waiting_forever():
    async with body_before_a_turn() as body:
        readings = [asyncio.create_task(anext(body)) for _ in range(2)]
        await turns(5)
        await body.aclose()
        outcomes = await asyncio.gather(*readings, return_exceptions=True)
    assert [type(outcome.__cause__) for outcome in outcomes] == [
        ConnectionAbortedError, RuntimeError]


@on_loops
async def test_a_body_closed_during_the_turn_of_others_fails_the_reading():
    async with body_before_a_turn() as body:
        reading = asyncio.create_task(anext(body))
        await turns(1)
        await body.aclose()
        error = await failure(reading)
        assert (type(error), type(error.__cause__)) == (HttpDataError, ConnectionAbortedError)


@on_loops
async def test_bytes_that_came_before_a_request_are_never_its_response(monkeypatch):
    sockets = Sockets()
    loop = asyncio.get_running_loop()
    now = loop.time()
    async with Server(Answering(OK)) as server, pool(get_sock=sockets) as request:
        # However fast the next request is: no time passes.
        monkeypatch.setattr(loop, 'time', lambda: now)
        await get(request, server.url)
        sockets.send_to_last(server.peers[0], EVIL)
        assert (await get(request, server.url))[2] == b'ok'


@on_loops
async def test_a_cancelled_reading_closes_the_connection():
    script = holding(UNFINISHED)
    async with Server(script) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        assert await anext(body) == b'ok'
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await anext(body)
        assert asyncio.current_task().cancelling() == 0
        await until(lambda: script.closed)
        # What there was is not to be taken for the whole.
        for reading in anext(body), buffered(body):
            error = await failure(reading)
            assert (type(error), type(error.__cause__)) == (HttpDataError, asyncio.CancelledError)
            assert str(error) == f'{where(server)}reading the response body: CancelledError'


@pytest.mark.parametrize('what', ['bytes', 'reset'])
@on_loops
async def test_a_cancellation_wins_over_data_that_comes_in_the_same_tick(what):
    sockets = Sockets()
    with socket.create_server(('127.0.0.1', 0)) as listener:
        listener.setblocking(False)
        url = f'http://127.0.0.1:{listener.getsockname()[1]}/'
        async with pool(get_sock=sockets) as request:
            requesting = asyncio.create_task(request(b'GET', url))
            peer, _ = await asyncio.get_running_loop().sock_accept(listener)
            with peer:
                await asyncio.get_running_loop().sock_recv(peer, 1000)
                peer.sendall(UNFINISHED)
                _, _, body = await requesting
                assert await anext(body) == b'ok'
                reading = asyncio.create_task(anext(body))
                await turns(3)
                if what == 'bytes':
                    peer.sendall(b'more')
                else:
                    peer.setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
                    peer.close()
                assert select.select(sockets.socks, [], [], PATIENCE)[0]
                # In its next turn the loop finds that, after this task has gone on.
                await turns(1)
                # A loop that looked before has ended the task, unless that has failed.
                is_cancelled = reading.cancel()
                outcome, = await asyncio.gather(reading, return_exceptions=True)
                if is_cancelled:
                    assert isinstance(outcome, asyncio.CancelledError)
                    assert sockets.socks[0].fileno() == -1
                else:
                    assert (what, outcome) == ('bytes', b'more')
                    await body.aclose()


@on_loops
async def test_a_connection_that_is_reset_while_it_idles_is_closed():
    sockets = Sockets()
    async with Server(Answering(OK)) as server, pool(get_sock=sockets) as request:
        await get(request, server.url)
        server.peers[0].reset()
        await until(lambda: sockets.socks[0].fileno() == -1)
        await get(request, server.url)
        assert len(server.peers) == 2


def drop(box):
    box.clear()


def drop_in_a_cycle(box):
    body = box.pop()
    cycle = [body]
    cycle.append(cycle)
    del body, cycle
    gc.collect()


@on_loops
async def test_a_body_dropped_unfinished_closes_its_connection():
    script = holding(UNFINISHED)
    ways = list(itertools.product((drop, drop_in_a_cycle), (False, True), (0, 1)))
    async with Server(script) as server, pool() as request:
        for how, in_thread, chunks in ways:
            closed = script.closed
            box = [(await request(b'GET', server.url))[2]]
            for _ in range(chunks):
                assert await anext(box[0]) == b'ok'
            if in_thread:
                await asyncio.to_thread(how, box)
            else:
                how(box)
            await until(lambda closed=closed: script.closed > closed)
        assert len(server.peers) == len(ways)


@on_loops
async def test_a_body_dropped_in_another_thread_is_closed_in_that_of_its_loop():
    threads = []

    class Socket(socket.socket):
        def close(self):
            threads.append(threading.current_thread())
            super().close()

    def get_sock(family):
        sock = Socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        return sock

    script = holding(UNFINISHED)
    async with Server(script) as server, pool(get_sock=get_sock) as request:
        box = [(await request(b'GET', server.url))[2]]
        await asyncio.to_thread(drop, box)
        await until(lambda: script.closed)
    assert threads == [threading.current_thread()]


@on_loops
async def test_a_reading_dropped_while_it_waits_closes_the_connection():
    script = holding(UNFINISHED)
    async with Server(script) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        assert await anext(body) == b'ok'
        reading = body.__anext__()
        reading.send(None)
        reading.close()
        await until(lambda: script.closed)


@pytest.mark.parametrize('with_pool', [False])
@pytest.mark.usefixtures('only_full_collections')
@on_loops
async def test_a_body_dropped_in_a_cycle_after_a_pause_closes_its_connection(with_pool):
    script = holding(UNFINISHED, b'more')
    request, close = Pool(socket_timeout=0.02)
    async with Server(script) as server:
        box = [(await request(b'GET', server.url))[2]]
        # Until the loop has nothing to do with it: bytes have come, no time is running.
        await asyncio.sleep(0.1)
        if with_pool:
            del request, close
        drop_in_a_cycle(box)
        await until(lambda: script.closed)


@on_loops
async def test_a_body_left_in_the_middle_closes_its_connection():
    script = holding(UNFINISHED)
    async with Server(script) as server, pool() as request:
        async for _ in (await request(b'GET', server.url))[2]:
            break
        await until(lambda: script.closed)


def in_this_thread(function, *args):
    function(*args)


def in_another_thread(function, *args):
    thread = threading.Thread(target=function, args=args)
    thread.start()
    thread.join()


@pytest.mark.parametrize('loop_is_closed, how', [
    (False, drop), (False, drop_in_a_cycle), (True, drop),
    ])
@pytest.mark.parametrize('loop_name', LOOPS)
@pytest.mark.usefixtures('only_full_collections')
def test_a_body_dropped_after_its_loop_stopped_closes_its_connection(
        loop_name, loop_is_closed, how):
    before = open_descriptors()

    async def begin(listener):
        request, _ = Pool()
        url = f'http://127.0.0.1:{listener.getsockname()[1]}/'
        task = asyncio.create_task(request(b'GET', url))
        peer, _ = await asyncio.get_running_loop().sock_accept(listener)
        peer.sendall(UNFINISHED)
        return peer, [(await task)[2]]

    for run in in_this_thread, in_another_thread:
        with (socket.create_server(('127.0.0.1', 0)) as listener,
              asyncio.Runner(loop_factory=LOOPS[loop_name]) as runner):
            listener.setblocking(False)
            peer, box = runner.run(begin(listener))
            with peer:
                if loop_is_closed:
                    runner.close()
                run(how, box)
                # The end comes at once, with nothing that runs the loop.
                peer.settimeout(PATIENCE)
                while peer.recv(1000):
                    pass
    assert open_descriptors() == before


@on_loops
async def test_a_pool_closed_while_a_body_is_read_lets_it_end():
    script = holding(OK[:-1], OK[-1:])
    request, close = Pool()
    async with Server(script) as server:
        _, _, body = await request(b'GET', server.url)
        await close()
        assert await buffered(body) == b'ok'
        await until(lambda: script.closed)


# -------------------------------------------------------------------------- the pace of a consumer


@on_loops
async def test_nothing_is_read_ahead_of_the_consumer():
    loop = asyncio.get_running_loop()
    sockets = Sockets(bufsize=65536)

    async def fill(sock):
        """Send until the client has not read anything for a hundred turns of its loop."""
        sent = full = 0
        while full < 100 and sent < 64 * 1024 * 1024:
            try:
                sent += sock.send(b'x' * 65536)
                full = 0
            except BlockingIOError:
                full += 1
                await turns(1)
        return sent

    with socket.create_server(('127.0.0.1', 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        listener.setblocking(False)
        async with pool(get_sock=sockets) as request:
            url = f'http://127.0.0.1:{listener.getsockname()[1]}/'
            task = asyncio.create_task(request(b'GET', url))
            sock, _ = await loop.sock_accept(listener)
            with sock:
                sock.setblocking(False)
                await loop.sock_recv(sock, 1000)
                sock.send(head())
                _, _, body = await task
                sent = await fill(sock)
                assert sent < 8 * 1024 * 1024
                # Nor does the loop look at what is there again and again.
                await until_idle()
                read = len(await anext(body))
                while read < sent // 2:
                    read += len(await anext(body))
                more = await fill(sock)
                assert 0 < more < 8 * 1024 * 1024
            assert read + len(await buffered(body)) == sent + more


@SCHEMES
@on_loops
async def test_a_body_that_pauses_behind_a_full_read_is_waited_for(scheme):
    size = 16 * 1024
    fields = head(b'content-length: %d' % (4 * size), b'x-fill: ')
    begun = fields.replace(b'x-fill: ', b'x-fill: ' + b'f' * (size - len(fields))) + b'x' * size
    go = asyncio.Event()

    async def script(peer):
        await peer.read_head()
        await peer.send(begun)
        await go.wait()
        await peer.send(b'y' * (3 * size))
        await peer.closed()

    # Over TLS a read gives a record at most, and the longest records are as long.
    async with Server(script, context_of(scheme)) as server:
        async with pool(get_ssl_context=trusting, recv_bufsize=size) as request:
            _, _, body = await request(b'GET', server.url)
            reading = asyncio.create_task(buffered(body))
            # Nobody looks again and again meanwhile.
            await until_idle()
            assert not reading.done()
            go.set()
            assert await reading == b'x' * size + b'y' * (3 * size)


@on_loops
async def test_a_body_that_is_always_readable_lets_other_tasks_have_their_turns():
    length = 16 * 1024 * 1024

    def serve(listener):
        peer, _ = listener.accept()
        with peer:
            peer.recv(1000)
            peer.sendall(head(b'content-length: %d' % length) + b'x' * length)

    moved = most = total = 0

    async def other():
        nonlocal moved
        while True:
            moved = 0
            await asyncio.sleep(0)

    with socket.create_server(('127.0.0.1', 0)) as listener:
        async with pool() as request:
            serving = asyncio.create_task(asyncio.to_thread(serve, listener))
            _, _, body = await request(
                b'GET', f'http://127.0.0.1:{listener.getsockname()[1]}/')
            other_task = asyncio.create_task(other())
            async for chunk in body:
                total += len(chunk)
                moved += len(chunk)
                most = max(most, moved)
                # As work on a chunk does: by then there is always more to read.
                time.sleep(0.0005)
            other_task.cancel()
            await serving
    assert total == length
    assert most <= 1.25 * 1024 * 1024
