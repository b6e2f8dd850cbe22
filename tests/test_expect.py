"""`expect: 100-continue`: when the body is called, and when it never is."""

import asyncio
import itertools

import pytest

from lowhaio import HttpConnectionClosedError, HttpDataError, HttpHeaderTooLong, buffered
from tests.harness import (
    CONTINUE,
    EXPECT,
    FINAL,
    HINTS,
    MAY_BE_TLS,
    OK,
    SCHEMES,
    Server,
    at,
    chunked,
    context_of,
    cut_into_bytes,
    failed,
    get,
    of_length,
    on_clock,
    on_loops,
    passing,
    pool,
    row,
    server_context,
    trusting,
    turns,
    until,
    uploading,
    with_length,
    yielding,
)


class Called:
    """A body that keeps when it was called."""

    def __init__(self, *chunks):
        self.chunks = chunks
        self.times = []

    def __call__(self):
        self.times.append(asyncio.get_running_loop().time())
        return yielding(*self.chunks)


CONTINUING = {
    'at once': [CONTINUE],
    'in HTTP/1.0': [b'HTTP/1.0 100 \r\n\r\n'],
    'with fields': [b'HTTP/1.1 100 Continue\r\na: b\r\nconnection: close\r\n\r\n'],
    'byte by byte': cut_into_bytes(CONTINUE),
    'after another': [HINTS, CONTINUE],
    'after another, in one read': [HINTS + CONTINUE],
    'before another, in one read': [CONTINUE + HINTS],
    'twice': [CONTINUE + CONTINUE],
    'with a part of the final response': [CONTINUE + OK[:9]],
}


@SCHEMES
@on_clock
async def test_a_body_is_not_called_before_100_continue(scheme):
    async def script(peer):
        number = int((await peer.read_head()).split()[1][1:])
        name = names[number]
        await turns(20)
        assert bodies[number].times == []
        for piece in CONTINUING[name][:-1]:
            await peer.send(piece)
            assert bodies[number].times == []
        await peer.send(CONTINUING[name][-1])
        assert await peer.read(2) == b'ab'
        await peer.send(OK[9:] if 'final' in name else OK)
        assert (await peer.read_head()).startswith(b'GET')
        await peer.send(OK)

    async def check(number):
        async with pool(get_ssl_context=trusting) as request:
            with row(names[number]):
                started = loop.time()
                code, _, response = await uploading(
                    request, server, bodies[number], number, 2, headers=EXPECT)
                assert (code, await buffered(response)) == (b'200', b'ok')
                assert bodies[number].times[0] == started
                assert (await get(request, server.url))[2] == b'ok'

    loop = asyncio.get_running_loop()
    names = list(CONTINUING)
    bodies = [Called(b'a', None, b'b') for _ in names]
    async with Server(script, context_of(scheme)) as server:
        await asyncio.gather(*map(check, range(len(names))))
        assert len(server.peers) == len(names)


@on_clock
async def test_a_body_waits_for_100_continue_for_at_most_a_second_or_socket_timeout():
    # What comes before the body, and after it; and if socket_timeout is short.
    cases = {
        'nothing': (b'', OK, False),
        'nothing, in a short time': (b'', OK, True),
        'another interim response': (HINTS, OK, False),
        'it is late': (b'', CONTINUE + OK, False),
        'a part of it': (CONTINUE[:-1], CONTINUE[-1:] + OK, False),
        'a part of it, in a short time': (CONTINUE[:-1], CONTINUE[-1:] + OK, True),
        'a part of the final response': (OK[:-5], OK[-5:], False),
    }

    has_begun = asyncio.Event()

    async def script(peer):
        name = names[int((await peer.read_head()).split()[1][1:])]
        before, after, _ = cases[name]
        await peer.send(*[before] * bool(before))
        has_begun.set()
        assert await peer.read(2) == b'ab'
        await peer.send(after)
        assert (await peer.read_head()).startswith(b'GET')
        await peer.send(OK)

    async def check(server, number, name):
        is_short = cases[name][2]
        async with pool(get_ssl_context=trusting,
                        socket_timeout=0.2 if is_short else 10) as request:
            with row(f'{name}, {server.url}'):
                body = Called(b'ab')
                has_begun.clear()
                task = asyncio.create_task(uploading(
                    request, server, body, number, 2, headers=EXPECT))
                await has_begun.wait()
                await passing((0.2 if is_short else 1) - 0.001)
                assert body.times == []
                await passing(0.001)
                await until(lambda: body.times)
                code, _, response = await task
                assert (code, await buffered(response)) == (b'200', b'ok')
                assert (await get(request, server.url))[2] == b'ok'

    names = list(cases)
    async with Server(script) as plain, Server(script, server_context()) as tls:
        for server in plain, tls:
            for number, name in enumerate(names):
                await check(server, number, name)
        assert len(plain.peers) == len(tls.peers) == len(names)


@SCHEMES
@on_clock
async def test_a_body_is_never_called_when_a_final_response_comes_in_place_of_100_continue(scheme):
    cases = {
        '417': (b'417', b'ok', [with_length(start=b'HTTP/1.1 417 Expectation Failed')]),
        '401': (b'401', b'ok', [with_length(start=b'HTTP/1.1 401 Unauthorized')]),
        '200': (b'200', b'ok', [OK]),
        '204': (b'204', b'', [b'HTTP/1.1 204 No Content\r\n\r\n']),
        'byte by byte': (b'200', b'ok', cut_into_bytes(OK)),
        'its body later': (b'200', b'ok', [OK[:-2], b'o', b'k']),
        'after another interim response': (b'200', b'ok', [HINTS + OK]),
        'after 100, in one read': (b'403', b'ok', [
            CONTINUE + with_length(start=b'HTTP/1.1 403 Forbidden')]),
        'chunked': (b'429', b'ok', [FINAL['chunked'][3]]),
    }
    ends, gets = {}, []

    async def script(peer):
        head = await peer.read_head()
        if head.startswith(b'GET'):
            gets.append(peer.index)
            await peer.send(OK)
            return
        name = names[int(head.split()[1][1:])]
        await peer.send(*cases[name][2])
        ends[name] = await peer.closed()

    async def check(number, name):
        code, content, _ = cases[name]
        body = Called(b'ab')
        async with pool(get_ssl_context=trusting) as request:
            with row(name):
                response = await uploading(request, server, body, number, 2, headers=EXPECT)
                assert response[0] == code
                assert await buffered(response[2]) == content
                assert body.times == []
                await until(lambda: ends.get(name) == b'')
                assert (await get(request, server.url))[2] == b'ok'

    names = list(cases)
    async with Server(script, context_of(scheme)) as server:
        await asyncio.gather(*itertools.starmap(check, enumerate(names)))
    assert len(gets) == len(names)


EXPECTING = {
    'upper case': ((b'EXPECT', b'100-CONTINUE'),),
    'mixed case': ((b'Expect', b'100-Continue'),),
    'white space': ((b'expect', b' \t100-continue '),),
    'first of a list': ((b'expect', b'100-continue, a=b'),),
    'before a tab': ((b'expect', b'100-continue\t, a=b'),),
    'last of a list': ((b'expect', b'a ,\t100-continue'),),
    'the second field': ((b'expect', b'a'), (b'expect', b'100-continue')),
    'the first field': ((b'expect', b'100-continue'), (b'expect', b'a')),
    'with a chunked body': ((b'expect', b'100-continue'), (b'transfer-encoding', b'chunked')),
}

NOT_EXPECTING = {
    'another': ((b'expect', b'a'),),
    'longer': ((b'expect', b'100-continued'),),
    'longer at the start': ((b'expect', b'a-100-continue'),),
    'empty': ((b'expect', b''),),
    'another field': ((b'x-expect', b'100-continue'),),
}


@on_loops
async def test_the_field_expect_is_a_list_in_any_case():
    async def script(peer):
        head = await peer.read_head()
        came.append(bool(body.times))
        await peer.send(CONTINUE)
        await peer.reader.readuntil(b'b')
        assert b'100-continue' in head.lower() or b'\r\nexpect: a' in head or b'expect: \r' in head
        await peer.send(OK)

    for is_expecting, forms in ((True, EXPECTING), (False, NOT_EXPECTING)):
        for name, headers in forms.items():
            is_coded = 'chunked' in name
            came, body = [], Called(b'2\r\nab\r\n0\r\n\r\n' if is_coded else b'ab')
            length = () if is_coded else of_length(2)
            async with Server(script) as server, pool() as request:
                with row(name):
                    code, _, response = await request(
                        b'PUT', server.url, headers=(*headers, *length), body=body)
                    assert (code, await buffered(response)) == (b'200', b'ok')
                    assert came == [not is_expecting]


@on_loops
async def test_what_fails_while_100_continue_is_waited_for():
    cases = {
        'an end': (b'', 'end', HttpConnectionClosedError, EOFError,
                   'the peer closed the connection, after no byte of it' + MAY_BE_TLS),
        'an end in the head': (
            b'HTTP/1.1 1', 'end', HttpConnectionClosedError, EOFError,
            "the peer closed the connection, after b'HTTP/1.1 1'"),
        'a reset': (b'', 'reset', HttpConnectionClosedError, ConnectionResetError,
                    'ConnectionResetError: [Errno 104] Connection reset by peer' + MAY_BE_TLS),
        'rubbish': (b'\0\n', 'wait', HttpDataError, ValueError,
                    'bad status line: expected HTTP/1.x, a space, three digits and a '
                    "reason, got b'\\x00'"),
        'a long head': (b'HTTP/1.1 100 \r\na: ' + b'b' * 200, 'wait', HttpHeaderTooLong, None,
                        'the head is longer than max_header_length, 200 bytes'),
        'many interim responses': (
            HINTS * 101, 'wait', HttpDataError, ValueError,
            'got more than 100 interim responses'),
    }

    async def script(peer):
        raw, act, *_ = cases[names[int((await peer.read_head()).split()[1][1:])]]
        await peer.send(*[raw] * bool(raw))
        if act == 'reset':
            peer.reset()
            return
        if act == 'end':
            peer.writer.write_eof()
        assert await peer.closed() == b''

    names = list(cases)
    async with Server(script) as server, pool(max_header_length=200) as request:
        for number, (name, (raw, _, kind, cause, text)) in enumerate(cases.items()):
            body = Called(b'ab')
            with row(name):
                error = await failed(
                    uploading(request, server, body, number, 2, headers=EXPECT), kind, cause,
                    at(server, f'waiting for 100 Continue: {text}'))
                assert (error.reused, error.response_started) == (False, bool(raw))
                assert body.times == []


@on_loops
async def test_a_malformed_body_in_place_of_100_continue_is_one_of_the_response():
    async def script(peer):
        await peer.read_head()
        await peer.send(chunked(b'x\r\n'))
        assert await peer.closed() == b''

    async with Server(script) as server, pool() as request:
        await failed(
            uploading(request, server, Called(b'ab'), length=2, headers=EXPECT),
            HttpDataError, ValueError,
            at(server, 'reading the response body: bad chunk-size line: expected 1 to 16 hex '
                       "digits, an optional extension and CRLF, got b'x\\r\\n'"))


@SCHEMES
@pytest.mark.parametrize('limit', ['cancel', 'asyncio.timeout'])
@on_clock
async def test_a_request_may_be_cancelled_while_it_waits_for_100_continue(scheme, limit):
    async def script(peer):
        await peer.read_head()
        await peer.send(HINTS)
        has_come.set()
        ends.append(await peer.closed())

    async def upload():
        async with asyncio.timeout(None if limit == 'cancel' else 0.5):
            await uploading(request, server, body, length=2, headers=EXPECT)

    has_come, ends, body = asyncio.Event(), [], Called(b'ab')
    async with (Server(script, context_of(scheme)) as server,
                pool(get_ssl_context=trusting) as request):
        task = asyncio.create_task(upload())
        await has_come.wait()
        if limit == 'cancel':
            task.cancel()
        await passing(0.5)
        [error] = await asyncio.gather(task, return_exceptions=True)
        assert type(error) is (asyncio.CancelledError if limit == 'cancel' else TimeoutError)
        assert task.cancelling() == (limit == 'cancel')
        await until(lambda: ends == [b''])
    assert body.times == []


@on_loops
async def test_a_body_that_is_not_ready_after_100_continue_is_sent_when_it_is():
    async def script(peer):
        await peer.read_head()
        await peer.send(CONTINUE)
        assert await peer.read(1) == b'a'
        await peer.send(OK)

    async def body():
        await asyncio.sleep(0)
        yield b'a'

    async with Server(script) as server, pool() as request:
        _, _, response = await request(
            b'PUT', server.url, headers=((b'expect', b'100-continue'), *of_length(1)), body=body)
        assert await buffered(response) == b'ok'
