"""Responses that come before the request has been sent: which of them end the sending."""

import asyncio
import contextlib
import functools
import gc
import itertools
import select
import socket
import ssl
import struct
import threading
import weakref

import pytest

from lowhaio import (
    HttpConnectionClosedError,
    HttpConnectionError,
    HttpDataError,
    HttpHeaderTooLong,
    Pool,
    buffered,
    streamed,
)
from tests.harness import (
    AS_CHUNKS,
    BLOCKING,
    CANCELLED,
    CLOSED_IN_TURN,
    CONTINUE,
    EXPECT,
    FINAL,
    FORGED,
    HINTS,
    LARGE,
    LONG_BODY,
    LOOPS,
    MAY_BE_TLS,
    NO_CONTENT,
    OK,
    PATIENCE,
    SCHEMES,
    SWALLOWED,
    SWITCHING,
    UPGRADE,
    Sending,
    Server,
    Sockets,
    ThreadServer,
    WantingToWrite,
    at,
    cancelling,
    chunked,
    context_of,
    cut_into_bytes,
    deaf_server,
    end_stream,
    failed,
    forever,
    get,
    head,
    measured,
    of_length,
    on_clock,
    on_loops,
    on_loops_at_once,
    peer_prefix,
    pool,
    receive_end,
    receive_head,
    row,
    say_goodbye,
    server_context,
    small_sock,
    trusting,
    turns,
    until,
    until_idle,
    uploading,
    wanting_to_write,
    with_length,
)

OLD = b'HTTP/1.0 200 OK'


# Those that come before the request has been sent.


def endless(*steps):
    """A body that repeats its last step for ever."""
    body = Sending()
    body.steps = itertools.chain(steps, itertools.repeat(steps[-1]))
    return body


async def a_turn():
    await asyncio.sleep(0)


async def never():
    await asyncio.get_running_loop().create_future()


async def a_task():
    await asyncio.create_task(forever())


async def a_moment():
    await asyncio.sleep(0.001)


# What the client is at when the response comes: a body, what it sees, and if the server reads.
STATES = {
    'right after the head': (lambda: Sending(forever), CANCELLED, True),
    'waiting for an event': (lambda: Sending(b'a', forever), CANCELLED, True),
    'waiting for a future': (lambda: Sending(b'a', never), CANCELLED, True),
    'waiting for a task': (lambda: Sending(b'a', a_task), CANCELLED, True),
    'waiting for a little': (lambda: endless(b'a', a_moment), CANCELLED, True),
    'the server does not read the first chunk': (lambda: Sending(BLOCKING), CLOSED_IN_TURN, False),
    'the server does not read the second chunk': (
        lambda: Sending(b'a', a_turn, BLOCKING), CLOSED_IN_TURN, False),
    'chunk after chunk, but the server does not read': (
        lambda: endless(bytes(50_000)), CLOSED_IN_TURN, False),
    'chunk after chunk': (lambda: endless(bytes(50_000)), CLOSED_IN_TURN, True),
}


def cut_head_into_bytes(raw):
    return [*cut_into_bytes(raw[:250]), *([raw[250:]] if len(raw) > 250 else [])]


def cut_after_lines(raw):
    return [*raw[:250].splitlines(keepends=True), *([raw[250:]] if len(raw) > 250 else [])]


CUTS = {
    'whole': lambda raw: [raw],
    'byte by byte': cut_head_into_bytes,
    'cut after each line': cut_after_lines,
}


class Early:
    """A script that answers each PUT as its path says, before it reads the body, and keeps what
    it got until the client closed. A GET is answered after it was read."""

    def __init__(self, *cases):
        self.cases = cases  # the pieces of each response, and if the body is read meanwhile
        self.ends = {}
        self.gets = []  # the indexes of the connections

    async def __call__(self, peer):
        while True:
            head = await peer.read_head()
            if head.startswith(b'GET'):
                self.gets.append(peer.index)
                await peer.send(OK)
                continue
            number = int(head.split()[1][1:])
            pieces, is_read = self.cases[number]
            if is_read:
                reading = asyncio.ensure_future(reading_all(peer))
            else:
                peer.writer.transport.pause_reading()
            await turns(30)  # until the client can send no more
            with contextlib.suppress(ConnectionError):
                await peer.send(*pieces)
            if not is_read:
                await turns(30)
                reading = asyncio.ensure_future(reading_all(peer))
                peer.writer.transport.resume_reading()
            self.ends[number] = await reading
            return


async def whole(response):
    """The response, once its body has been read, which goes on with the sending."""
    code, headers, body = await response
    await buffered(body)
    return code, headers, body


async def reading_all(peer):
    """How many bytes come until the client has closed. Over TLS it may do so in a record."""
    length = 0
    with contextlib.suppress(ConnectionError, OSError):
        while data := await peer.reader.read(2 ** 20):
            length += len(data)
    return length


@contextlib.asynccontextmanager
async def early_server(scheme, *cases):
    script = Early(*cases)
    async with Server(script, context_of(scheme)) as server:
        server.early = script
        yield server


@pytest.mark.parametrize('cut', CUTS)
@SCHEMES
@on_loops
async def test_a_final_response_ends_the_sending_and_is_returned(scheme, cut):
    async def check(server, number, response, state):
        code, content, trailers, _ = FINAL[response]
        make, events, is_read = STATES[state]
        body = make()
        with row(f'{response}, {state}'):
            async with pool(get_ssl_context=trusting, get_sock=small_sock) as request:
                response = await uploading(request, server, body, number)
                assert body.events == events
                assert cancelling() == 0
                assert response[0] == code
                assert await buffered(response[2]) == content
                assert response[2].trailers == trailers
                # It was sent no further, so the connection is of no use any more.
                await until(lambda: number in server.early.ends)
                assert server.early.ends[number] < (10 ** 8 if is_read else len(BLOCKING))
                assert (await get(request, server.url))[2] == b'ok'

    # Each response while the client waits and while it is blocked, and each state.
    pairs = [(response, state) for response in FINAL for state in STATES
             if response == '413' or state == 'waiting for an event'
             or state == 'the server does not read the first chunk']
    cases = [(CUTS[cut](FINAL[response][3]), STATES[state][2]) for response, state in pairs]
    async with early_server(scheme, *cases) as server, asyncio.TaskGroup() as group:
        for number, (response, state) in enumerate(pairs):
            group.create_task(check(server, number, response, state))


@SCHEMES
@on_loops
async def test_a_switch_of_protocols_that_was_not_asked_for_ends_the_sending(scheme):
    body = Sending(b'a', forever)
    async with (early_server(scheme, ([SWITCHING + b'\r\n\r\n'], True)) as server,
                pool(get_ssl_context=trusting) as request):
        error = await failed(
            uploading(request, server, body), HttpDataError, ValueError)
        assert str(error).endswith(
            ', reading the response head: got 101 Switching Protocols, but the request had no '
            'upgrade')
        assert (body.events, error.response_started) == (CANCELLED, True)


@on_loops
async def test_a_look_at_what_came_while_sending_may_have_to_wait_to_send():
    async def script(peer):
        await peer.read_head()
        WantingToWrite.wants = 3
        await peer.send(FINAL['413'][3])
        await peer.closed()

    body = Sending(b'a', forever)
    async with (Server(script, server_context()) as server,
                pool(get_ssl_context=wanting_to_write) as request):
        response = await uploading(request, server, body)
        assert (response[0], await buffered(response[2])) == (b'413', b'ok')
        assert (body.events, WantingToWrite.wants) == (CANCELLED, 0)


@on_loops
async def test_a_reading_while_the_sending_waits_may_have_to_wait_to_send():
    async def script(peer):
        await peer.read_head()
        await peer.send(b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n')
        await is_returned.wait()
        await peer.send(b'ok')
        await peer.closed()

    def get_sock(family):
        sock = small_sock(family)
        descriptors.append(sock.fileno())
        return sock

    body = Sending(b'a', forever)
    is_returned = asyncio.Event()
    descriptors = []
    async with (Server(script, server_context()) as server,
                pool(get_ssl_context=wanting_to_write, get_sock=get_sock) as request):
        _, _, response = await uploading(request, server, body)
        # Once when it looks at what is there, and once when it is about to wait.
        WantingToWrite.wants = 2
        is_returned.set()
        await until(lambda: select.select(descriptors, [], [], 0)[0])
        assert (await anext(response), WantingToWrite.wants) == (b'ok', 0)
        await response.aclose()


@SCHEMES
@on_loops
async def test_a_final_response_ends_the_sending_of_a_body_that_only_takes_turns(scheme):
    async def limited(number, body):
        async with asyncio.timeout(5):
            code, _, response = await uploading(request, server, body, number)
            assert (code, await buffered(response)) == (b'413', b'ok')
            assert body.events == CANCELLED

    cases = [([FINAL['413'][3]], True)] * 2
    async with (early_server(scheme, *cases) as server,
                pool(get_ssl_context=trusting) as request):
        await limited(0, endless(b'a', a_turn))
        await limited(1, endless(a_turn))


@SCHEMES
@on_loops
async def test_a_connection_is_closed_after_an_early_response_that_may_end_later(scheme):
    """Its body goes to the end of the stream, or has not come yet."""
    go_on = asyncio.Event()

    async def script(peer):
        await peer.read_head()
        await peer.send(b'HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\no')
        await go_on.wait()
        await peer.send(b'k')
        assert await peer.closed() == b'a'
        ends.append(peer.index)

    ends = []
    async with (Server(script, context_of(scheme)) as server,
                pool(get_ssl_context=trusting) as request):
        body = Sending(b'a', forever)
        code, _, response = await request(b'PUT', server.url, headers=of_length(2), body=body)
        assert (code, await anext(response), body.events) == (b'403', b'o', CANCELLED)
        assert ends == []
        go_on.set()
        assert await buffered(response) == b'k'
        await until(lambda: ends == [0])


@on_loops
async def test_an_early_response_may_go_to_the_end_of_the_stream():
    async def script(peer):
        await peer.read_head()
        await peer.send(b'HTTP/1.1 403 Forbidden\r\n\r\n', b'o', b'k')
        peer.writer.write_eof()
        ends.append(await peer.closed())

    ends = []
    async with Server(script) as server, pool() as request:
        code, _, response = await request(
            b'PUT', server.url, headers=of_length(2), body=Sending(b'a', forever))
        assert (code, await buffered(response)) == (b'403', b'ok')
        await until(lambda: ends == [b'a'])


@on_loops
async def test_bytes_after_an_early_response_are_never_delivered():
    raw = FINAL['413'][3] + FORGED
    async with early_server('http', ([raw], True)) as server, pool() as request:
        code, _, response = await uploading(request, server, Sending(b'a', forever))
        assert (code, await buffered(response)) == (b'413', b'ok')
        assert (await get(request, server.url))[2] == b'ok'
        assert server.early.gets == [1]


async def failing_when_closed():
    try:
        yield b'a'
        await forever()
    finally:
        await asyncio.sleep(0)
        raise LookupError('in the cleaning up')


async def failing_when_cancelled():
    try:
        yield b'a'
        await forever()
    except asyncio.CancelledError:
        raise LookupError('instead of the cancellation') from None


async def ending_when_cancelled():
    yield b'a'
    with contextlib.suppress(asyncio.CancelledError):
        await forever()


async def going_on_when_cancelled():
    yield b'a'
    with contextlib.suppress(asyncio.CancelledError):
        await forever()
    for _ in range(3):
        yield b'more'
    raise AssertionError('it was asked for more')


async def waiting_when_cancelled():
    yield b'a'
    with contextlib.suppress(asyncio.CancelledError):
        await forever()
    await asyncio.sleep(0.001)
    yield b'more'
    raise AssertionError('it was asked for more')


async def yielding_in_its_cleaning_up():
    try:
        yield b'a'
        await forever()
    finally:
        yield b'more'


async def with_a_timeout_of_its_own():
    yield b'a'
    async with asyncio.timeout(10):
        await forever()


async def with_a_timeout_in_its_cleaning_up():
    try:
        yield b'a'
        await forever()
    finally:
        async with asyncio.timeout(0.001):
            await forever()


async def with_a_task_group():
    yield b'a'
    async with asyncio.TaskGroup() as group:
        group.create_task(forever())


async def with_a_blocked_chunk():
    try:
        yield b'a'
        yield BLOCKING
    finally:
        await asyncio.sleep(0.001)
        raise LookupError('in the cleaning up')


class EndlessIterator:
    """No generator, so there is nothing to close."""

    is_first = True

    def __aiter__(self):
        return self

    async def __anext__(self):
        is_first, self.is_first = self.is_first, False
        if is_first:
            return b'a'
        return await forever()


@pytest.mark.parametrize('make', [
    failing_when_closed, failing_when_cancelled, ending_when_cancelled, going_on_when_cancelled,
    waiting_when_cancelled, yielding_in_its_cleaning_up, with_a_timeout_of_its_own,
    with_a_timeout_in_its_cleaning_up, with_a_task_group, with_a_blocked_chunk, EndlessIterator])
@on_loops
async def test_an_early_response_is_returned_whatever_the_body_makes_of_its_end(make):
    async def body():
        chunks = aiter(make())
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            try:
                if hasattr(chunks, 'aclose'):
                    await chunks.aclose()
            finally:
                ends.append(asyncio.current_task())

    ends = []
    is_read = make is not with_a_blocked_chunk
    async with (early_server('http', ([FINAL['413'][3]], is_read)) as server,
                pool(get_sock=small_sock) as request):
        for function in (body, make):
            code, _, response = await uploading(request, server, function)
            assert (code, await buffered(response)) == (b'413', b'ok')
            assert cancelling() == 0
        assert ends == [asyncio.current_task()]
        assert (await get(request, server.url))[2] == b'ok'
        assert server.early.gets == [2]


@pytest.mark.parametrize('limit', ['cancel', 'asyncio.timeout'])
@on_loops
async def test_a_cancellation_wins_over_an_early_response_while_the_body_is_closed(limit):
    async def body():
        try:
            yield b'a'
            await forever()
        finally:
            cleans_up.set()
            await forever()

    async def upload():
        async with asyncio.timeout(None if limit == 'cancel' else 0.05):
            await uploading(request, server, body)

    cleans_up = asyncio.Event()
    async with early_server('http', ([FINAL['413'][3]], True)) as server, pool() as request:
        task = asyncio.create_task(upload())
        await cleans_up.wait()
        if limit == 'cancel':
            task.cancel()
        [error] = await asyncio.gather(task, return_exceptions=True)
        assert type(error) is (asyncio.CancelledError if limit == 'cancel' else TimeoutError)
        assert task.cancelling() == (limit == 'cancel')
        await until(lambda: server.early.ends)


@on_loops
async def test_a_timeout_around_a_request_that_is_answered_early_has_no_effect_afterwards():
    async with early_server('http', ([FINAL['413'][3]], True)) as server, pool() as request:
        async with asyncio.timeout(PATIENCE / 2):
            code, _, response = await uploading(request, server, Sending(b'a', forever))
        assert (code, await buffered(response)) == (b'413', b'ok')
        assert cancelling() == 0


# Responses that do not end the sending, and what is on the wire.
WELCOME = {
    '200': (b'200', b'ok', OK),
    '201': (b'201', b'ok', with_length(b'location: /', start=b'HTTP/1.1 201 Created')),
    '204': (b'204', b'', b'HTTP/1.1 204 No Content\r\n\r\n'),
    '299 after interim responses': (
        b'299', b'ok', CONTINUE + HINTS + with_length(start=b'HTTP/1.1 299 ')),
    '200 with a long body': (
        b'200', LONG_BODY,
        b'HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b' % (len(LONG_BODY), LONG_BODY)),
    'interim responses': (b'200', b'ok', CONTINUE + HINTS),
}


@pytest.mark.parametrize('cut', CUTS)
@SCHEMES
@on_loops
async def test_below_300_sending_goes_on_to_its_end_and_the_connection_is_reused(scheme, cut):
    cases = [(response, is_blocked) for response in WELCOME
             for is_blocked in ((False, True) if cut == 'whole' else (False,))]
    answered = [asyncio.Event() for _ in cases]
    lengths = {}

    async def script(peer):
        head = await peer.read_head()
        number = int(head.split()[1][1:])
        raw = WELCOME[cases[number][0]][2]
        peer.writer.transport.pause_reading()
        await turns(30)
        await peer.send(*CUTS[cut](raw))
        await turns(30)
        answered[number].set()
        peer.writer.transport.resume_reading()
        lengths[number] = 0
        while lengths[number] < of_case(number):
            data = await peer.reader.read(2 ** 20)
            if not data:
                return
            lengths[number] += len(data)
        if cases[number][0] == 'interim responses':
            await peer.send(OK)
        await peer.read_head()
        lengths[number] = 'and another request'
        await peer.send(OK)

    def of_case(number):
        return len(BLOCKING) if cases[number][1] else 2

    async def check(number):
        name, is_blocked = cases[number]
        code, content, _ = WELCOME[name]
        body = Sending(BLOCKING) if is_blocked else Sending(b'a', answered[number].wait, b'b')
        # Not the smallest: with that, the kernel takes milliseconds for each of many sends.
        get_sock = functools.partial(small_sock, size=2 ** 16)
        with row(cases[number]):
            async with pool(get_ssl_context=trusting, get_sock=get_sock) as request:
                response = await uploading(request, server, body, number, of_case(number))
                # It is returned while the body is being sent, unless it is interim.
                assert name == 'interim responses' or not response[2].request_sent
                assert response[0] == code
                assert await buffered(response[2]) == content
                assert response[2].request_sent
                assert answered[number].is_set()
                assert body.events == [True, 'cleaned up']
                await until(lambda: lengths[number] == of_case(number))
                assert (await get(request, server.url))[2] == b'ok'
                assert lengths[number] == 'and another request'

    async with Server(script, context_of(scheme)) as server, asyncio.TaskGroup() as group:
        for number in range(len(cases)):
            group.create_task(check(number))
    assert len(server.peers) == len(cases)


MALFORMED = {
    'a bad status line': (
        b'HTTP/9 400\r\n\r\n', HttpDataError, ValueError,
        'bad status line: expected HTTP/1.x, a space, three digits and a reason, got '
        "b'HTTP/9 400\\r'"),
    'a bad field line': (
        b'HTTP/1.1 400 \r\n: b\r\n\r\n', HttpDataError, ValueError,
        "bad field line: expected a token, \":\" and a value, got b': b\\r'"),
    'a long head': (
        b'HTTP/1.1 400 \r\na: ' + bytes(500).replace(b'\0', b'b'), HttpHeaderTooLong, None,
        'the head is longer than max_header_length, 400 bytes'),
    'many interim responses': (
        CONTINUE * 101, HttpDataError, ValueError, 'got more than 100 interim responses'),
    'rubbish after an interim response': (
        CONTINUE + b'\0\n', HttpDataError, ValueError,
        'bad status line: expected HTTP/1.x, a space, three digits and a reason, got '
        "b'\\x00'"),
}

UPLOADS = {
    'right after the head': (lambda: Sending(forever), CANCELLED, True),
    'waiting': (lambda: Sending(b'a', forever), CANCELLED, True),
    'blocked': (lambda: Sending(BLOCKING), CLOSED_IN_TURN, False),
    'chunk after chunk': (lambda: endless(bytes(50_000)), CLOSED_IN_TURN, True),
}


@SCHEMES
@on_loops
async def test_an_early_response_that_is_malformed_ends_the_request(scheme):
    async def check(server, number, case, state):
        _, kind, cause, text = MALFORMED[case]
        make, events, _ = UPLOADS[state]
        body = make()
        with row(f'{case}, {state}'):
            async with pool(get_ssl_context=trusting, get_sock=small_sock,
                            max_header_length=400) as request:
                error = await failed(
                    uploading(request, server, body, number), kind, cause,
                    at(server, f'reading the response head: {text}'))
                assert (error.reused, error.response_started) == (False, True)
                assert body.events == events
                await until(lambda: number in server.early.ends)

    pairs = [(case, state) for case in MALFORMED for state in UPLOADS]
    cases = [([MALFORMED[case][0]], UPLOADS[state][2]) for case, state in pairs]
    async with early_server(scheme, *cases) as server, asyncio.TaskGroup() as group:
        for number, (case, state) in enumerate(pairs):
            group.create_task(check(server, number, case, state))


SHORT = b'HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nok'
LAST = with_length(b'connection: close')
AFTER_HEAD = ' (after the head of a response, 200)'

# How a server ends the connection after some bytes while it gets a body: what it has sent, the
# cause, and what is said of it.
ENDS = {
    'an end': (b'', 'end', EOFError,
               'the peer closed the connection, after no byte of the response head' + MAY_BE_TLS),
    'an end in the head': (b'HTTP/1.1 4', 'end', EOFError,
                           "the peer closed the connection, after b'HTTP/1.1 4'"),
    'an end after an interim response': (
        CONTINUE, 'end', EOFError,
        'the peer closed the connection, after no byte of the response head'),
    'an end in a body below 300': (
        SHORT, 'end', EOFError, 'the peer closed the connection, 2 bytes before the end that '
        'content-length told'),
    'an end in a chunked body below 300': (
        chunked(b'1\r\na\r\n'), 'end', EOFError,
        'the peer closed the connection in a chunk-size line'),
    'a reset': (b'', 'reset', ConnectionResetError,
                'ConnectionResetError: [Errno 104] Connection reset by peer' + MAY_BE_TLS),
    'a reset after an interim response': (
        HINTS, 'reset', ConnectionResetError,
        'ConnectionResetError: [Errno 104] Connection reset by peer'),
    'a reset in a body below 300': (
        SHORT, 'reset', ConnectionResetError,
        'ConnectionResetError: [Errno 104] Connection reset by peer'),
}


@pytest.mark.usefixtures('only_full_collections')
@on_loops
async def test_a_request_that_has_failed_keeps_nothing_until_garbage_is_collected():
    """Its frames hold what it was given, and are held themselves while its error is."""
    async def script(peer):
        await peer.read_head()
        if await peer.read(1) == b'a':
            await peer.send(b'HTTP/1.1 2000 OK\r\n\r\n')
        else:
            peer.writer.transport.pause_reading()
        await forever()

    async def message_of(failing):
        # Who keeps the error itself in a variable makes a cycle, too.
        try:
            await failing
        except HttpDataError as error:
            return str(error)

    for text, step, seconds in [
            ('reading the response head: bad status line', b'a', PATIENCE),
            ('sending the request: TimeoutError', BLOCKING, 0.5)]:
        body = Sending(step)
        kept = weakref.ref(body)
        with row(text):
            async with Server(script) as server:
                async with pool(socket_timeout=seconds, get_sock=small_sock) as request:
                    message = await message_of(
                        uploading(request, server, body, length=len(step)))
                    assert message.startswith(at(server, text))
                    del body
                    await turns(3)
                    assert kept() is None


@pytest.mark.usefixtures('only_full_collections')
@on_loops
async def test_what_a_body_has_waited_for_in_vain_is_not_kept_until_garbage_is_collected():
    """Its error has the frames of the sending in its traceback, and those must not have it."""
    def failing_soon(given):
        future = asyncio.get_running_loop().create_future()
        future.get_loop().call_soon(future.set_exception, KeyError('given'))
        given.append(weakref.ref(future))
        return future

    async def waiting(number, given):
        if number:
            yield b'a'
        await failing_soon(given)

    async def is_refused(failing):
        try:
            await failing
        except HttpDataError as error:
            return isinstance(error.__cause__, KeyError)

    for number in (0, 1):
        given = []
        with row(number):
            async with Server(reading_all) as server, pool() as request:
                body = functools.partial(waiting, number, given)
                assert await is_refused(uploading(request, server, body, length=2))
                await turns(3)
                assert given[0]() is None


@pytest.mark.parametrize('steps', [(forever,), (b'a', forever)],
                         ids=['right after the head', 'waiting'])
@on_loops
async def test_an_end_of_the_connection_while_the_body_waits_ends_the_request(steps):
    async def script(peer):
        raw, act, _, _ = ENDS[(await peer.read_head()).split()[1][1:].decode().replace('_', ' ')]
        await peer.send(*[raw] * bool(raw))
        if act == 'end':
            peer.writer.write_eof()
            await peer.closed()
        else:
            peer.reset()

    async with Server(script) as server:
        for name, (raw, _, cause, text) in ENDS.items():
            with row(name):
                body = Sending(*steps)
                doing = 'reading the response body' if 'below 300' in name else \
                    'waiting for the request body'
                async with pool() as request:
                    error = await failed(
                        whole(uploading(request, server, body, name.replace(' ', '_'))),
                        HttpConnectionClosedError, cause, at(server, f'{doing}: {text}'))
                assert error.response_started == bool(raw)
                assert body.events == CANCELLED


# Whole responses below 300 that are the last of their connections, and their content.
LASTS = {
    'a length': (b'200', b'ok', with_length(b'connection: close')),
    'a length, among other options': (b'200', b'ok', with_length(b'connection: a, Close')),
    'HTTP/1.0': (b'200', b'ok', with_length(start=OLD)),
    'chunks and a trailer': (b'200', b'ok', chunked(
        b'1\r\no\r\n1\r\nk\r\n0\r\na: b\r\n\r\n', b'connection: close')),
    'the end of the connection': (b'200', b'ok', b'HTTP/1.1 200 OK\r\n\r\nok'),
    'nothing, to the end of the connection': (b'201', b'', b'HTTP/1.1 201 Created\r\n\r\n'),
    'no content': (b'204', b'', head(b'connection: close', start=NO_CONTENT)),
    'interim responses before it': (
        b'200', b'ok', CONTINUE + HINTS + with_length(b'connection: close')),
    'bytes after it': (b'200', b'ok', with_length(b'connection: close') + FORGED),
    'a long one': (b'200', LONG_BODY[:9000], head(
        b'connection: close', b'content-length: 9000') + LONG_BODY[:9000]),
}


class EndingBehind:
    """A script that answers an upload, ends its own side of the connection, and goes on reading
    if it is to. GETs are answered."""

    def __init__(self, raw, end, is_read=True, answers_get=True):
        self.raw = raw
        self.end = end
        self.is_read = is_read
        self.answers_get = answers_get
        self.is_over = threading.Event()

    def __call__(self, sock):
        data = b''
        while b'\r\n\r\n' not in data:
            data += sock.recv(65536)
        if data.startswith(b'GET') and self.answers_get:
            sock.sendall(OK)
            receive_end(sock)
            return
        sock.sendall(self.raw)
        self.end(sock)
        if self.is_read:
            while socket.socket.recv(sock, 2 ** 20):
                pass
        else:
            assert self.is_over.wait(PATIENCE)


ENDINGS = {
    'plain': (None, end_stream),
    'TLS, with close_notify': (server_context, say_goodbye),
    'TLS, without': (server_context, end_stream),
}


@pytest.mark.parametrize('ending', ENDINGS)
@on_loops
async def test_the_end_behind_a_whole_last_response_below_300_ends_the_sending(ending):
    context, end = ENDINGS[ending]
    for name, state in [(name, 'waiting') for name in LASTS] + [
            ('a length', state) for state in UPLOADS if state != 'waiting']:
        expected, content, raw = LASTS[name]
        make, events, is_read = UPLOADS[state]
        body = make()
        script = EndingBehind(raw, end, is_read)
        is_cut = ending == 'TLS, without' and name.endswith('the end of the connection')
        with row(f'{name}, {state}'), ThreadServer(script, context and context()) as server:
            async with pool(get_ssl_context=trusting, get_sock=small_sock) as request:
                upload = uploading(request, server, body)
                if is_cut:
                    error = await failed(whole(upload), HttpConnectionClosedError, ssl.SSLEOFError)
                    assert str(error).startswith(at(server, 'reading the response body: '))
                else:
                    code, _, response = await upload
                    assert (code, await buffered(response)) == (expected, content)
                    assert not response.request_sent
                assert body.events == events
                script.is_over.set()
                # Its connection is not used again.
                assert (await get(request, server.url))[2] == b'ok'
                assert len(server.socks) == 2


@SCHEMES
@on_loops
async def test_a_reset_behind_a_whole_last_response_below_300_ends_the_sending(scheme):
    """It is what a system makes of a connection that a server closes before it has read all."""
    async def script(peer):
        await peer.read_head()
        await peer.send(LAST)
        peer.reset()
        raise ConnectionResetError

    for state, (make, events, _) in UPLOADS.items():
        body = make()
        with row(state):
            async with Server(script, context_of(scheme)) as server, pool(
                    get_ssl_context=trusting, get_sock=small_sock) as request:
                code, _, response = await uploading(request, server, body)
                assert (code, await buffered(response)) == (b'200', b'ok')
                assert (response.request_sent, body.events) == (False, events)


@pytest.mark.parametrize('ending', ENDINGS)
@on_loops
async def test_the_end_behind_a_whole_last_response_that_fills_one_read_ends_the_sending(ending):
    context, end = ENDINGS[ending]
    script = EndingBehind(LAST, end)
    with ThreadServer(script, context and context()) as server:
        async with pool(get_ssl_context=trusting, recv_bufsize=len(b'ok')) as request:
            body = Sending(b'a', forever)
            code, _, response = await uploading(request, server, body)
            assert (code, await buffered(response)) == (b'200', b'ok')
            assert (response.request_sent, body.events) == (False, CANCELLED)


@pytest.mark.parametrize('ending', ENDINGS)
@on_loops
async def test_the_end_behind_a_whole_last_response_of_many_reads_ends_the_sending(ending):
    """Over TLS, a read gives one record at most."""
    context, end = ENDINGS[ending]
    content = b'a' * 100_000
    script = EndingBehind(head(b'connection: close', b'content-length: 100000') + content, end)
    with ThreadServer(script, context and context()) as server:
        async with pool(get_ssl_context=trusting, recv_bufsize=len(content)) as request:
            body = Sending(b'a', forever)
            code, _, received = await uploading(request, server, body)
            assert (code, await buffered(received)) == (b'200', content)
            assert (received.request_sent, body.events) == (False, CANCELLED)


@SCHEMES
@on_loops
async def test_bytes_between_a_whole_last_response_and_the_end_are_never_delivered(scheme):
    async def script(peer):
        await peer.read_head()
        await peer.send(LAST)
        await turns(30)
        answered.set()
        assert await peer.read(2) == b'ab'
        await peer.send(FORGED)
        peer.writer.close()

    answered = asyncio.Event()
    async with (Server(script, context_of(scheme)) as server,
                pool(get_ssl_context=trusting) as request):
        body = Sending(b'a', answered.wait, b'b', forever)
        code, _, response = await uploading(request, server, body, length=3)
        assert (code, await buffered(response), response.request_sent) == (b'200', b'ok', False)
        assert body.events == CANCELLED


@on_loops
async def test_a_request_or_a_method_may_make_a_response_the_last_and_whole():
    script = EndingBehind(with_length(), end_stream)
    with ThreadServer(script) as server:
        async with pool() as request:
            body = Sending(b'a', forever)
            code, _, response = await uploading(
                request, server, body, headers=((b'connection', b'close'),))
            assert (code, await buffered(response)) == (b'200', b'ok')
            assert (response.request_sent, body.events) == (False, CANCELLED)
            # Of HEAD, the content does not come.
            script.raw = head(b'content-length: 2', b'connection: close')
            code, _, response = await request(
                b'HEAD', server.url, headers=of_length(2), body=Sending(b'a', forever))
            assert (code, await buffered(response)) == (b'200', b'')
            assert not response.request_sent


@SCHEMES
@on_loops
async def test_after_a_wanted_switch_of_protocols_the_sending_goes_on(scheme):
    """What follows is not of HTTP, so its end tells nothing of the request."""
    async def script(peer):
        await peer.read_head()
        await peer.send(SWITCHING + b'\r\n\r\nhello')
        answered.set()
        assert await peer.read(2) == b'ab'
        await peer.send(b' world')
        peer.writer.close()

    answered = asyncio.Event()
    async with (Server(script, context_of(scheme)) as server,
                pool(get_ssl_context=trusting) as request):
        body = Sending(b'a', answered.wait, functools.partial(turns, 30), b'b')
        code, _, response = await uploading(request, server, body, length=2, headers=UPGRADE)
        assert (code, response.request_sent, body.events) == (b'101', True, SWALLOWED)
        assert await buffered(response) == b'hello world'


@pytest.mark.parametrize('ending', ENDINGS)
@on_loops
async def test_the_end_behind_another_response_below_300_does_not_end_the_sending(ending):
    """A server that does not say that it closes may have ended only what it sends."""
    context, end = ENDINGS[ending]
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def ending_and_telling(sock):
        end(sock)
        loop.call_soon_threadsafe(ended.set)

    script = EndingBehind(OK, ending_and_telling)
    with ThreadServer(script, context and context()) as server:
        # Reuse that is turned off by the client says nothing of the server.
        async with pool(get_ssl_context=trusting, keep_alive_timeout=0) as request:
            body = Sending(b'a', ended.wait, functools.partial(turns, 30), b'b')
            code, _, response = await uploading(request, server, body, length=2)
            assert (code, await buffered(response)) == (b'200', b'ok')
            assert (response.request_sent, body.events) == (True, SWALLOWED)


@pytest.mark.parametrize('headers, chunk', [
    (of_length(1), b'a'), (AS_CHUNKS, b'1\r\na\r\n0\r\n\r\n')], ids=['length', 'coding'])
@SCHEMES
@on_loops
async def test_a_response_ends_no_sending_of_which_all_has_been_sent(scheme, headers, chunk):
    """Its length or its last chunk tells that, although the body has not come to its end."""
    async def script(peer):
        await peer.read_head()
        await peer.read(len(chunk))
        await peer.send(FINAL['413'][3])
        await peer.read_head()
        await peer.send(OK)

    async with Server(script, context_of(scheme)) as server, \
            pool(get_ssl_context=trusting) as request:
        body = Sending(chunk, forever)
        code, _, response = await request(b'PUT', server.url, headers=headers, body=body)
        assert (code, await buffered(response), response.request_sent) == (b'413', b'ok', True)
        assert body.events == CANCELLED
        assert (await get(request, server.url))[2] == b'ok'
    assert len(server.peers) == 1


@SCHEMES
@on_loops_at_once
async def test_nothing_of_a_response_is_read_ahead_of_its_reader_while_sending(scheme):
    """A server that waits for its response to be taken stops to read."""
    sent = 0

    def script(sock):
        nonlocal sent
        receive_head(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sock.sendall(b'HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 10000000\r\n\r\n')
        sock.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            while True:
                sent += sock.send(bytes(1000))
        answered.set()
        sock.settimeout(PATIENCE)
        assert sock.recv(1) == b'b'

    async def until_answered():
        await until(answered.is_set)

    answered = threading.Event()
    size = 30_000 if scheme == 'http' else 10_000
    with ThreadServer(script, context_of(scheme)) as server:
        async with pool(get_ssl_context=trusting, recv_bufsize=size,
                        get_sock=functools.partial(small_sock, size=4096)) as request:
            body = Sending(until_answered, b'b')
            code, _, response = await uploading(request, server, body, length=1)
            assert (code, response.request_sent) == (b'200', False)
            await until_answered()
            # What one read may give, and what the kernel and TLS hold.
            assert sent < 1_000_000
            with pytest.raises(HttpDataError):
                while True:
                    assert len(await anext(response)) <= size


@on_loops
async def test_a_response_that_always_has_more_to_read_does_not_keep_the_sending_from_its_turns():
    def script(sock):
        receive_head(sock)
        sock.sendall(b'HTTP/1.1 200 OK\r\n\r\n')
        while True:
            sock.sendall(bytes(2 ** 20))

    async def body():
        await has_answered.wait()
        for _ in range(3):
            await asyncio.sleep(0)
        yield b'a'

    has_answered = asyncio.Event()
    sockets = Sockets()
    with ThreadServer(script) as server:
        async with pool(get_sock=sockets) as request:
            _, _, response = await uploading(request, server, body, length=1)
            has_answered.set()
            length = 0
            while not response.request_sent:
                assert select.select(sockets.socks, [], [], PATIENCE)[0]
                length += len(await anext(response))
                assert length < 2 ** 25
            await response.aclose()


@SCHEMES
@on_loops
async def test_a_body_below_300_that_is_malformed_ends_the_sending(scheme):
    raw = chunked(b'1\r\no\r\nx\r\n')
    async with (early_server(scheme, ([raw], True)) as server,
                pool(get_ssl_context=trusting) as request):
        body = Sending(b'a', forever)
        await failed(
            whole(uploading(request, server, body)), HttpDataError, ValueError,
            at(server, 'reading the response body: bad chunk-size line: expected CRLF after the '
               "chunk, 1 to 16 hex digits, an optional extension and CRLF, got b'\\r\\nx\\r\\n'"))
        assert body.events == CANCELLED


# Why a request is not sent whole after a response below 300: how the error begins, and its cause.
UNSENT = {
    'a reset': ('sending the request: ', (ConnectionResetError, ssl.SSLEOFError)),
    'the server stops reading': ('sending the request: TimeoutError: socket_timeout, 5 seconds, '
                                 'passed' + AFTER_HEAD, (TimeoutError,)),
    'the body fails': ('the request body: OSError: of the disk', (OSError,)),
}


@SCHEMES
@on_loops_at_once
async def test_a_connection_that_is_reset_does_no_harm_to_another(scheme):
    """Of one thread, TLS connections have the queue of OpenSSL's errors in common."""
    def script(sock):
        data = b''
        while b'\r\n\r\n' not in data:
            data += sock.recv(65536)
        if data.startswith(b'PUT /kept '):
            is_begun.set()
            assert is_reset.wait(PATIENCE)
            left = len(content) - len(data.partition(b'\r\n\r\n')[2])
            while left:
                left -= len(sock.recv(2 ** 20))
            sock.sendall(OK)
            receive_end(sock)
        else:
            assert is_begun.wait(PATIENCE)
            # It has come whole, so it is the sending that fails.
            sock.sendall(OK)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            socket.socket.close(sock)

    def upload(path):
        return request(b'PUT', server.url + path, headers=of_length(len(content)),
                       body=streamed(content))

    async def uploaded(path):
        code, _, body = await upload(path)
        return code, await buffered(body)

    content = bytes(4_000_000)
    is_begun, is_reset = threading.Event(), threading.Event()
    # The server is in threads of its own, where its calls of OpenSSL do not see ours.
    with ThreadServer(script, context_of(scheme)) as server:
        async with pool(get_ssl_context=trusting, get_sock=small_sock) as request:
            kept = asyncio.create_task(uploaded('kept'))
            # The response may have been seen before.
            error = await failed(uploaded('reset'), HttpConnectionClosedError, None)
            assert str(error).startswith(at(server, 'sending the request: '))
            is_reset.set()
            assert await kept == (b'200', b'ok')


@pytest.mark.parametrize('last', [False, True], ids=['another may follow', 'the last'])
@SCHEMES
@on_clock
async def test_below_300_a_request_that_is_not_sent_whole_is_an_error(scheme, last):
    raw = LASTS['a length'][2] if last else OK
    peers = []

    async def script(peer):
        name = (await peer.read_head()).split()[1][1:].decode().replace('_', ' ')
        # The loop does not hold a transport that does not read: it would be collected, and close.
        peers.append(peer)
        peer.writer.transport.pause_reading()
        await peer.send(raw)
        await turns(30)
        answered[name].set()
        if name == 'a reset':
            peer.reset()
        else:
            await forever()

    async def failing(name):
        yield b'a'
        await answered[name].wait()
        await turns(10)
        raise OSError('of the disk')

    async def long(name):
        while True:
            yield bytes(50_000)

    async def check(name):
        begin, causes = UNSENT[name]
        body = failing if name == 'the body fails' else long
        with row(name):
            async with pool(get_ssl_context=trusting, get_sock=small_sock,
                            socket_timeout=5) as request:
                task = asyncio.create_task(whole(uploading(
                    request, server, functools.partial(body, name), name.replace(' ', '_'))))
                _, task = await measured(task, answered[name].is_set)
                error = await failed(
                    task, HttpConnectionClosedError if name == 'a reset' else HttpDataError, None)
                assert isinstance(error.__cause__, causes)
                assert str(error).startswith(at(server, begin))
                assert error.response_started

    # Behind a whole response that is the last, a reset is an end.
    names = [name for name in UNSENT if not (name == 'a reset' and last)]
    answered = {name: asyncio.Event() for name in names}
    async with Server(script, context_of(scheme)) as server:
        for name in names:
            await check(name)


# A server that has sent some bytes and is gone when the next chunk is sent: what it has sent,
# and the code and body of the response, or None for the error of the sending.
HEARD = {
    'a response below 300': (OK, None),
    'a response of 300 or above': (FINAL['413'][3], (b'413', b'ok')),
    'a chunked response': (FINAL['chunked'][3], (b'429', b'ok')),
    'a long response': (
        b'HTTP/1.1 403 Forbidden\r\ncontent-length: 50000\r\n\r\n' + bytes(50_000),
        (b'403', bytes(50_000))),
    'a response after interim ones': (CONTINUE + HINTS + FINAL['413'][3], (b'413', b'ok')),
    'nothing': (b'', None),
    'a part of a head': (b'HTTP/1.1 413 Content Too Large\r\ncont', None),
    'interim responses': (CONTINUE + HINTS, None),
    'rubbish': (b'\0\0\n', None),
}


class Leaving:
    """A script that sends something after the head and leaves. The loop of the client may wait
    for it, in the body of the request, so that what has come is seen only when sending fails."""

    def __init__(self, raw, leave):
        self.raw = raw
        self.leave = leave
        self.is_asked, self.is_gone = threading.Event(), threading.Event()
        self.is_closed = False

    def __call__(self, sock):
        data = sock.recv(1)
        while not data.endswith((b'\r\n\r\na', b'\r\n\r\n')):
            data += sock.recv(65536)
        if data.startswith(b'GET'):
            sock.sendall(OK)
            return
        assert self.is_asked.wait(PATIENCE)
        sock.sendall(self.raw)
        self.leave(sock)
        self.is_gone.set()

    async def body(self):
        try:
            yield b'a'
            # So that it leaves.
            await asyncio.sleep(0)
            self.is_asked.set()
            assert self.is_gone.wait(PATIENCE)
            while True:
                yield b'b'
        finally:
            self.is_closed = True


def leave_with_reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    sock.close()


def leave_with_end(sock):
    sock.close()


@pytest.mark.parametrize('leave', [leave_with_reset, leave_with_end])
@on_loops
async def test_what_the_server_said_before_the_sending_failed_is_the_response(leave):
    for name, (raw, expected) in HEARD.items():
        script = Leaving(raw, leave)
        with row(name), ThreadServer(script) as server:
            async with pool() as request:
                upload = request(b'PUT', server.url, headers=of_length(10 ** 6), body=script.body)
                if expected is None:
                    error = await failed(whole(upload), HttpConnectionClosedError, None)
                    assert type(error.__cause__) in (BrokenPipeError, ConnectionResetError)
                    assert str(error).startswith(at(server, 'sending the request: '))
                    assert error.response_started == bool(raw)
                else:
                    code, _, response = await upload
                    assert (code, await buffered(response)) == expected
                    assert not response.request_sent
                assert script.is_closed
                assert (await get(request, server.url))[2] == b'ok'


@on_loops
async def test_what_the_server_said_over_tls_before_the_sending_failed_is_the_response():
    for name in ('a response of 300 or above', 'a chunked response'):
        raw, expected = HEARD[name]
        script = Leaving(raw, leave_with_end)
        with row(name), ThreadServer(script, server_context()) as server:
            async with pool(get_ssl_context=trusting) as request:
                code, _, response = await request(
                    b'PUT', server.url, headers=of_length(10 ** 6), body=script.body)
                assert (code, await buffered(response)) == expected


@on_loops
async def test_a_response_is_not_returned_in_place_of_an_error_of_the_body_or_a_cancellation():
    """It does not tell why the sending ended."""
    async def script(peer):
        await peer.read_head()
        peer.writer.transport.pause_reading()
        await peer.send(OK)
        answered.set()
        await forever()

    async def failing():
        yield b'a'
        await answered.wait()
        await turns(5)
        raise OSError('of the disk')

    answered = asyncio.Event()
    async with Server(script) as server, pool(get_sock=small_sock) as request:
        error = await failed(
            whole(uploading(request, server, failing)), HttpDataError, OSError,
            peer_prefix(server, 'PUT') + ', the request body: OSError: of the disk')
        assert error.response_started
        answered.clear()
        task = asyncio.create_task(whole(uploading(request, server, streamed(BLOCKING))))
        await answered.wait()
        await turns(5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@on_loops
async def test_what_came_before_a_byte_of_the_request_was_sent_is_not_its_response():
    """It came over an idle connection, after that was looked at."""
    def script(sock):
        receive_head(sock)
        sock.sendall(OK)
        if server.socks.index(sock) == 0:
            go_on.wait(PATIENCE)
            sock.sendall(FORGED)
            leave_with_reset(sock)
            is_gone.set()

    async def body():
        go_on.set()
        assert is_gone.wait(PATIENCE)
        yield b'a'

    go_on, is_gone = threading.Event(), threading.Event()
    with ThreadServer(script) as server:
        async with pool() as request:
            await get(request, server.url)
            error = await failed(
                request(b'PUT', server.url, headers=of_length(1), body=body),
                HttpConnectionError, None)
            assert type(error.__cause__) in (BrokenPipeError, ConnectionResetError)
            assert str(error).startswith(at(server, 'sending the request: '))
            assert error.reused


class Blocked:
    """The server's end of a connection that has no room for anything more."""

    async def get_connection(self, *_):
        ours, self.theirs = socket.socketpair()
        ours.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                ours.send(bytes(65536))
        return ours


async def with_a_short_time():
    async with asyncio.timeout(0.01):
        yield BLOCKING


@on_loops
async def test_a_time_out_of_the_body_tells_if_something_of_the_request_was_sent():
    text = 'sending the request: TimeoutError: a time-out in the body passed '
    with deaf_server() as server:
        async with pool(get_sock=small_sock) as request:
            error = await failed(
                uploading(request, server, with_a_short_time, '', len(BLOCKING)), HttpDataError,
                TimeoutError)
            assert str(error).endswith(f', {text}while the request was being sent')
    blocked = Blocked()
    async with pool(get_connection=blocked.get_connection) as request:
        error = await failed(
            request(b'PUT', 'http://a.test/', headers=of_length(len(BLOCKING)),
                    body=with_a_short_time), HttpConnectionError, TimeoutError)
        assert str(error).endswith(f', {text}before the head was sent')
        blocked.theirs.close()


@pytest.mark.parametrize('ending', ENDINGS)
@on_loops
async def test_an_end_of_the_connection_is_told_with_the_phase_that_it_came_in(ending):
    """Whether a byte of the response has come, or none. Over TLS it may be a truncation."""
    context, end = ENDINGS[ending]

    def get(request, server):
        return request(b'GET', server.url)

    def waiting(request, server):
        return uploading(request, server, Sending(b'a', forever))

    def blocked(request, server):
        return uploading(request, server, Sending(BLOCKING))

    def sent(request, server):
        return uploading(request, server, streamed(b'a'), length=1)

    def expecting(request, server):
        return uploading(request, server, Sending(b'a'), headers=EXPECT)

    phases = {
        get: ('GET', 'reading the response head', 'it'),
        waiting: ('PUT', 'waiting for the request body', 'the response head'),
        blocked: ('PUT', 'sending the request', 'the response head'),
        sent: ('PUT', 'reading the response head', 'it'),
        expecting: ('PUT', 'waiting for 100 Continue', 'it'),
    }
    script = EndingBehind(b'', end, is_read=False, answers_get=False)
    with ThreadServer(script, context and context()) as server:
        async with pool(get_ssl_context=trusting, get_sock=small_sock) as request:
            for raw in (b'', b'HTTP/1.1 2', HINTS, HINTS + b'HTTP/1.1 2'):
                partial = raw.removeprefix(HINTS)
                for make, (method, phase, what) in phases.items():
                    with row((phase, raw)):
                        script.raw = raw
                        script.is_over.clear()
                        error = await failed(
                            make(request, server), HttpConnectionClosedError, None)
                        script.is_over.set()
                        expected = at(server, phase, method) + (
                            ': SSLEOFError: ' if ending == 'TLS, without' else
                            f': the peer closed the connection, after '
                            f'{partial or f"no byte of {what}"}'
                            f'{"" if raw or context else MAY_BE_TLS}')
                        assert str(error).startswith(expected)
                        assert ending == 'TLS, without' or str(error) == expected
                        assert error.response_started == bool(raw)


@on_loops
async def test_the_hint_that_a_port_may_be_for_https_is_for_an_origin_that_never_answered():
    """Neither if it answered over another connection, nor if that was long ago."""
    async def script(peer):
        head = await peer.read_head()
        if head.startswith(b'GET /answer'):
            await peer.send(LAST)

    async def upload(request):
        return await failed(
            uploading(request, server, Sending(forever)), HttpConnectionClosedError, EOFError)

    async with Server(script) as server:
        for is_answered in (False, True):
            async with pool() as request:
                if is_answered:
                    await get(request, server.url + 'answer')
                hint = '' if is_answered else MAY_BE_TLS
                await failed(
                    get(request, server.url), HttpConnectionClosedError, EOFError,
                    at(server, 'reading the response head: the peer closed the connection, after '
                       f'no byte of it{hint}', 'GET'))
                assert str(await upload(request)) == at(
                    server, 'waiting for the request body: the peer closed the connection, after '
                    f'no byte of the response head{hint}')


EARLIER = {
    'nothing': b'', 'interim': CONTINUE + HINTS, 'final': OK,
    'part': HINTS + b'HTTP/1.1 200 OK\r\ncont',
}


@on_clock
async def test_no_time_runs_while_the_body_waits_whatever_has_come_meanwhile():
    async def script(peer):
        raw = EARLIER[(await peer.read_head()).split()[1][1:].decode()]
        await peer.send(*[raw] * bool(raw))
        assert await peer.read(2) == b'ab'
        if raw != OK:
            await peer.send(OK[len(raw) - len(HINTS):] if raw.endswith(b'cont') else OK)

    async def a_while():
        await asyncio.sleep(60)

    async def check(name):
        with row(name):
            body = Sending(b'a', a_while, b'b', a_while)
            code, _, response = await uploading(request, server, body, name, 2)
            assert (code, await buffered(response)) == (b'200', b'ok')

    async with Server(script) as server, pool(socket_timeout=5) as request:
        for name in EARLIER:
            seconds, task = await measured(check(name))
            await task
            assert seconds >= 2 * 60


@on_clock
async def test_the_time_of_the_head_begins_with_the_last_byte_sent():
    async def script(peer):
        await peer.read_head()
        await peer.send(HINTS)
        await peer.closed()

    async def body():
        await asyncio.sleep(60)
        yield b'a'

    async with Server(script) as server, pool(socket_timeout=5) as request:
        seconds, task = await measured(
            request(b'PUT', server.url, headers=of_length(1), body=body))
        await failed(
            task, HttpDataError, TimeoutError,
            at(server, 'reading the response head: TimeoutError: socket_timeout, 5 seconds, '
               'passed'))
    assert seconds == 60 + 5


@SCHEMES
@on_loops_at_once
async def test_watching_for_an_early_response_uses_no_cpu(scheme):
    """Whatever has come, and whatever the client waits for."""
    large = b'HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n' + bytes(1_000_000)
    responses = (b'', CONTINUE, CONTINUE + HINTS + b'HTTP/1.1 2', OK, OK[:-1], large)
    # What is sent before the body waits, and if the server reads it.
    bodies = (((), False), ((b'a',), False), ((bytes(1_000_000),), True), ((BLOCKING,), False))
    cases = [(response, *body) for response in responses for body in bodies]
    written = set()
    waiting = set()
    to_wait = {number for number, case in enumerate(cases) if BLOCKING not in case[1]}

    async def script(peer):
        number = int((await peer.read_head()).split()[1][1:])
        response, _, reads = cases[number]
        if not reads:
            peer.writer.transport.pause_reading()
        peer.writer.write(response)
        await turns(100)
        written.add(number)
        await (peer.closed() if reads else forever())

    async def upload(number):
        async def wait():
            waiting.add(number)
            await forever()

        async with pool(get_ssl_context=trusting, get_sock=small_sock) as request:
            await whole(uploading(request, server, Sending(*cases[number][1], wait), number))

    async with Server(script, context_of(scheme)) as server:
        tasks = [asyncio.create_task(upload(number)) for number in range(len(cases))]
        await until(lambda: len(written) == len(cases) and waiting == to_wait)
        await asyncio.sleep(0.05)
        await until_idle()
        for task in tasks:
            assert not task.done()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@on_loops
async def test_a_request_that_is_closed_by_hand_while_it_is_blocked_closes_its_connection():
    sock = None

    def get_sock(family):
        nonlocal sock
        sock = small_sock(family)
        return sock

    def is_full():
        try:
            sock.send(b'-')
        except BlockingIOError:
            return True
        return False

    with deaf_server() as server:
        async with pool(get_sock=get_sock) as request:
            coroutine = request(b'PUT', server.url, body=streamed(LARGE),
                                headers=of_length(len(LARGE)))
            coroutine.send(None)
            await until(is_full)  # a busy kernel takes some more
            coroutine.close()
            assert sock.fileno() == -1


@pytest.mark.parametrize('is_blocked', [True, False], ids=['sending', 'waiting for a chunk'])
@pytest.mark.parametrize('new_loop', LOOPS.values(), ids=LOOPS)
def test_a_request_that_is_dropped_after_its_loop_was_closed_closes_its_connection(
        new_loop, is_blocked):
    async def body():
        if not is_blocked:
            await asyncio.sleep(60)
        yield LARGE

    def get_sock(family):
        socks.append(small_sock(family))
        return socks[-1]

    async def begin():
        request, _ = Pool(get_sock=get_sock)
        coroutine = request(b'PUT', server.url, body=body, headers=of_length(len(LARGE)))
        coroutine.send(None)
        return coroutine

    socks = []
    with deaf_server() as server, contextlib.closing(new_loop()) as loop:
        coroutine = loop.run_until_complete(begin())
        loop.close()
        del coroutine
        gc.collect()
        assert [sock.fileno() for sock in socks] == [-1]
