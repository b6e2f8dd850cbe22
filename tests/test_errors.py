"""Errors tell in which phase an exchange failed, why, and if a request may have been heard."""

import asyncio
import contextlib
import errno
import socket

import pytest

from lowhaio import (
    HttpConnectionClosedError,
    HttpConnectionError,
    HttpDataError,
)
from tests.harness import (
    MAY_BE_TLS,
    OK,
    Answering,
    Server,
    failed,
    get,
    on_loops,
    peer_prefix,
    pool,
    row,
    system_error,
    until,
)


FACTS = {
    'closed before any byte': (
        b'', HttpConnectionClosedError, EOFError, False,
        ', reading the response head: the peer closed the connection, after no byte of it'),
    'closed in the head': (
        b'HTTP/1.1 2', HttpConnectionClosedError, EOFError, True,
        ", reading the response head: the peer closed the connection, after b'HTTP/1.1 2'"),
    'closed after an interim response': (
        b'HTTP/1.1 102 Processing\r\n\r\n', HttpConnectionClosedError, EOFError, True,
        ', reading the response head: the peer closed the connection, after no byte of it'),
    'closed in the body': (
        OK[:-1], HttpConnectionClosedError, EOFError, True,
        ', reading the response body: the peer closed the connection, 1 bytes before the end that '
        'content-length told'),
    'a head that is bad': (
        b'HTTP/2 200\r\n\r\n', HttpDataError, ValueError, True,
        ', reading the response head: bad status line: expected HTTP/1.x, a space, '
        "three digits and a reason, got b'HTTP/2 200\\r'"),
    'an upgrade that nobody wanted': (
        b'HTTP/1.1 101 Switching Protocols\r\n\r\n', HttpDataError, ValueError, True,
        ', reading the response head: got 101 Switching Protocols, but the request had no '
        'upgrade'),
}


@pytest.mark.parametrize('is_reused', [False, True], ids=['fresh', 'reused'])
@on_loops
async def test_an_error_tells_what_retries_depend_on(is_reused):
    ends = []

    async def script(peer):
        if is_reused:
            await peer.read_head()
            await peer.send(OK)
        await peer.read_head()
        await peer.send(response)
        peer.writer.write_eof()
        ends.append(await peer.closed())

    async with Server(script) as server, pool() as request:
        for case, (response, kind, cause, is_started, text) in FACTS.items():  # noqa: B007
            ends.clear()
            with row(case):
                if is_reused:
                    await get(request, server.url)
                may_be_tls = not is_reused and kind is HttpConnectionClosedError and not is_started
                error = await failed(
                    get(request, server.url + 'path?query'), kind, cause,
                    peer_prefix(server) + text + MAY_BE_TLS * may_be_tls)
                assert (error.reused, error.response_started) == (is_reused, is_started)
                await until(lambda: ends == [b''])


@on_loops
async def test_a_reset_is_the_end_of_a_connection():
    async def script(peer):
        await peer.read_head()
        await peer.send(OK[:-1])
        peer.reset()

    async with Server(script) as server, pool() as request:
        error = await failed(
            get(request, server.url), HttpConnectionClosedError, ConnectionResetError)
    assert str(error) == (f'{peer_prefix(server)}, reading the response body: '
                          + system_error(ConnectionResetError, errno.ECONNRESET))
    assert error.response_started


@on_loops
async def test_a_request_of_which_no_byte_could_be_sent_is_safe_to_retry():
    socks = []

    def get_sock(family):
        socks.append(socket.socket(family))
        return socks[-1]

    async def body():
        socks[0].shutdown(socket.SHUT_WR)
        yield b'ok'

    async with Server(Answering(OK)) as server, pool(get_sock=get_sock) as request:
        for is_reused in (False, True):
            if is_reused:
                socks.clear()
                await get(request, server.url)
            error = await failed(
                request(b'PUT', server.url, headers=((b'content-length', b'2'),), body=body),
                HttpConnectionError, BrokenPipeError,
                f'{peer_prefix(server, "PUT")}, sending the request: '
                + system_error(BrokenPipeError, errno.EPIPE))
            assert (error.reused, error.response_started) == (is_reused, False)
    assert len(server.peers) == 2


@on_loops
async def test_a_request_of_which_bytes_were_sent_is_not():
    socks = []

    def get_sock(family):
        socks.append(socket.socket(family))
        return socks[-1]

    async def body():
        yield b'o'
        # It is sent before the generator goes on.
        await asyncio.sleep(0)
        socks[0].shutdown(socket.SHUT_WR)
        yield b'k'

    async with Server(Answering(OK)) as server, pool(get_sock=get_sock) as request:
        error = await failed(
            request(b'PUT', server.url, headers=((b'content-length', b'2'),), body=body),
            HttpConnectionClosedError, BrokenPipeError)
        assert (error.reused, error.response_started) == (False, False)


async def body_ending_when_cancelled():
    yield await cancelled_in_vain()


async def body_cleaning_up_when_cancelled():
    try:
        yield await asyncio.get_running_loop().create_future()
    finally:
        await asyncio.sleep(0)


async def body_failing_when_cancelled():
    try:
        yield await asyncio.get_running_loop().create_future()
    except asyncio.CancelledError:
        await asyncio.sleep(0)
        raise LookupError from None


async def cancelled_in_vain():
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.get_running_loop().create_future()
    return b'ok'


@pytest.mark.parametrize('body', [
    body_ending_when_cancelled, body_cleaning_up_when_cancelled, body_failing_when_cancelled])
@on_loops
async def test_a_body_that_waits_when_its_head_can_not_be_sent_is_cancelled(body):
    socks = []
    ends = []

    def get_sock(family):
        socks.append(socket.socket(family))
        return socks[-1]

    async def observed():
        socks[0].shutdown(socket.SHUT_WR)
        chunks = body()
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await chunks.aclose()
            ends.append(True)

    async with Server(Answering(OK)) as server, pool(get_sock=get_sock) as request:
        await failed(
            request(b'PUT', server.url, headers=((b'content-length', b'2'),), body=observed),
            HttpConnectionError, BrokenPipeError)
        assert ends == [True]
