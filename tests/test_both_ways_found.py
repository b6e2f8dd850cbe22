"""What the searches have found of exchanges whose halves go on beside each other."""

import asyncio
import contextlib
import gc
import socket
import struct
import threading

import pytest

from lowhaio import HttpConnectionClosedError
from tests.harness import (
    PATIENCE,
    Server,
    ThreadServer,
    forever,
    of_length,
    on_loops,
    pool,
    receive_head,
    turns,
    until,
)


@pytest.mark.parametrize('head', [b'HTTP/1.0 200 OK', b'HTTP/1.1 200 OK\r\nconnection: close'])
@on_loops
async def test_a_reset_that_sending_meets_is_no_end_of_a_content_without_length(head):
    """The system reports a reset once. The next read finds an end, as if all had come."""
    async def script(peer):
        await peer.read_head()
        await peer.send(head + b'\r\n\r\nsome of it')
        await has_come.wait()
        peer.reset()
        is_reset.set()

    async def body():
        yield b'a'
        await is_reset.wait()
        while True:
            yield b'b'
            await asyncio.sleep(0)

    has_come, is_reset = asyncio.Event(), asyncio.Event()
    async with Server(script) as server, pool() as request:
        code, _, response = await request(
            b'PUT', server.url, headers=of_length(10 ** 6), body=body)
        assert (code, await anext(response)) == (b'200', b'some of it')
        has_come.set()
        await is_reset.wait()
        await turns(5)
        with pytest.raises(HttpConnectionClosedError) as caught:
            await anext(response)
        assert isinstance(caught.value.__cause__, ConnectionResetError)
        assert str(caught.value).startswith(f'PUT {server.origin} (peer ')
        assert not response.request_sent


@pytest.mark.parametrize('code', [b'200', b'403'])
@on_loops
async def test_nor_is_a_reset_that_sending_meets_before_the_response_has_been_read(code):
    def script(sock):
        receive_head(sock)
        assert is_asked.wait(PATIENCE)
        sock.sendall(b'HTTP/1.0 %b Some reason\r\n\r\nsome of it' % code)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        sock.close()
        is_reset.set()

    async def body():
        yield b'a'
        # So that it leaves.
        await asyncio.sleep(0)
        # All of this comes while the loop can not look.
        is_asked.set()
        assert is_reset.wait(PATIENCE)
        yield b'b'

    is_asked, is_reset = threading.Event(), threading.Event()
    with ThreadServer(script) as server:
        async with pool() as request:
            with pytest.raises(HttpConnectionClosedError) as caught:
                status, _, response = await request(
                    b'PUT', server.url, headers=of_length(2), body=body)
                assert (status, await anext(response)) == (code, b'some of it')
                await anext(response)
            assert isinstance(caught.value.__cause__, ConnectionResetError)
            assert str(caught.value).startswith(f'PUT {server.origin} (peer ')


@on_loops
async def test_a_generator_cleans_up_at_once_when_its_response_is_dropped_in_a_cycle():
    """Collected by itself, it would be closed in a task, and could not end."""
    async def script(peer):
        await peer.read_head()
        await peer.send(b'HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab')
        ends.append(await peer.closed())

    async def body():
        task = asyncio.current_task()
        try:
            yield b'a'
            await forever()
        finally:
            try:
                await asyncio.sleep(0)
            finally:
                events.append(asyncio.current_task() is task)

    ends, events = [], []
    async with Server(script) as server, pool() as request:
        _, _, response = await request(b'PUT', server.url, headers=of_length(5), body=body)
        assert await anext(response) == b'ab'
        cycle = [response]
        cycle.append(cycle)
        del response, cycle
        gc.collect()
        assert events == [True]
        await until(lambda: ends == [b'a'])


@pytest.mark.parametrize('length', [5000, 6000])
@on_loops
async def test_a_last_response_that_a_failed_sending_finds_may_be_longer_than_one_read(length):
    def script(sock):
        receive_head(sock)
        assert is_asked.wait(PATIENCE)
        sock.sendall(b'HTTP/1.0 200 OK\r\ncontent-length: %d\r\n\r\n' % length + bytes(5000))
        sock.close()
        has_closed.set()

    async def body():
        yield b'a'
        # So that it leaves.
        await asyncio.sleep(0)
        # All of this comes while the loop can not look.
        is_asked.set()
        assert has_closed.wait(PATIENCE)
        while True:
            yield b'b'

    is_asked, has_closed = threading.Event(), threading.Event()
    with ThreadServer(script) as server:
        async with pool(recv_bufsize=1000) as request:
            code, _, response = await request(
                b'PUT', server.url, headers=of_length(10 ** 6), body=body)
            content = b''
            with contextlib.nullcontext() if length == 5000 else pytest.raises(
                    HttpConnectionClosedError):
                async for chunk in response:
                    content += chunk
            assert (code, content, response.request_sent) == (b'200', bytes(5000), False)


@pytest.mark.parametrize('phase', ['of the request', 'of the response body'])
@on_loops
async def test_a_cancellation_is_not_lost_to_data_that_comes_while_the_generator_cleans_up(phase):
    async def script(peer):
        await peer.read_head()
        if phase == 'of the response body':
            await peer.send(head)
        await is_cleaning_up.wait()
        await peer.send(b'b' if phase == 'of the response body' else head + b'b')
        has_come.set()
        await peer.closed()

    async def body():
        try:
            yield b'a'
            await forever()
        finally:
            is_cleaning_up.set()
            await may_end.wait()

    async def client():
        _, _, response = await request(b'PUT', server.url, headers=of_length(5), body=body)
        has_response.set()
        return await anext(response)

    head = b'HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n'
    is_cleaning_up, has_come, may_end, has_response = (asyncio.Event() for _ in range(4))
    async with Server(script) as server, pool() as request:
        task = asyncio.create_task(client())
        if phase == 'of the response body':
            await has_response.wait()
        else:
            await until(lambda: server.peers)
        await turns(10)
        task.cancel('of the test')
        await has_come.wait()
        await turns(10)
        assert not task.done()
        may_end.set()
        with pytest.raises(asyncio.CancelledError, match='of the test'):
            await task
