"""Tests of lowhaio: what a user of it can see, through its public names and real sockets.

Servers are scripted in bytes. Each test runs on asyncio's own loop, and on uvloop where that is
installed, and afterwards there must be nothing left of it: no descriptor, no error in the loop,
no warning.
"""

import asyncio
import contextlib
import functools
import gc
import inspect
import os
import socket
import struct
import sys
from collections.abc import Awaitable, Callable

import pytest

import lowhaio
from lowhaio import (
    HttpConnectionClosedError,
    HttpConnectionError,
    HttpDataError,
    HttpDnsError,
    HttpHeaderTooLong,
    HttpLoggerAdapter,
    HttpTlsError,
    Pool,
    buffered,
    empty_async_iterator,
    streamed,
    timeout,
)

try:
    import uvloop
except ImportError:
    uvloop = None

LOOPS = {'asyncio': asyncio.SelectorEventLoop}
if uvloop is not None:
    LOOPS['uvloop'] = uvloop.new_event_loop
    uvloop.new_event_loop().close()  # the first one opens descriptors that stay

# So that a hang is a failure. Nothing waits for it to pass.
PATIENCE = 20

# -------------------------------------------------------------------------------- harness


def on_loops(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test function on each loop, and look at what it leaves behind."""
    @pytest.mark.parametrize('loop_name', LOOPS)
    @functools.wraps(test)
    def wrapper(*args, loop_name, **kwargs):
        before = open_descriptors()
        errors = []

        async def main():
            asyncio.get_running_loop().set_exception_handler(
                lambda loop, context: errors.append(context))
            async with asyncio.timeout(PATIENCE):
                await test(*args, **kwargs)
            # What is done by callbacks of what has just ended is part of the test.
            await turns(5)

        with asyncio.Runner(loop_factory=LOOPS[loop_name]) as runner:
            runner.run(main())
        gc.collect()
        assert errors == []
        assert open_descriptors() == before

    # pytest finds the fixtures and parameters that a test wants in its signature.
    signature = inspect.signature(test)
    wrapper.__signature__ = signature.replace(parameters=[
        *signature.parameters.values(),
        inspect.Parameter('loop_name', inspect.Parameter.KEYWORD_ONLY)])
    return wrapper


def open_descriptors() -> set[str]:
    return set(os.listdir('/dev/fd'))


async def turns(number: int) -> None:
    """Let the loop turn, so that what is ready happens."""
    for _ in range(number):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    """Wait for what must happen sooner or later."""
    while not condition():
        await asyncio.sleep(0.001)


class Peer:
    """The server's end of a connection."""

    def __init__(self, reader, writer, index):
        self.reader = reader
        self.writer = writer
        self.index = index
        self.sock = writer.get_extra_info('socket')
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def read_head(self) -> bytes:
        return await self.reader.readuntil(b'\r\n\r\n')

    async def read(self, length: int) -> bytes:
        return await self.reader.readexactly(length)

    async def send(self, *pieces: bytes) -> None:
        """Send each piece so that the client, on the same loop, sees one after the other."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await turns(4)

    async def closed(self) -> bytes:
        """Wait until the client has closed, and return what it sent before."""
        try:
            return await self.reader.read()
        except ConnectionResetError:
            return b''

    async def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Close with a RST instead of a FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        self.writer.transport.abort()


class Server:
    """Runs the script, a coroutine function of a Peer, for each connection."""

    def __init__(self, script, context=None):
        self.script = script
        self.context = context
        self.peers: list[Peer] = []
        self.tasks: set[asyncio.Task] = set()
        self.failures: list[BaseException] = []

    async def __aenter__(self):
        self.server = await asyncio.start_server(
            self.serve, '127.0.0.1', 0, ssl=self.context, limit=2 ** 20)
        self.port = self.server.sockets[0].getsockname()[1]
        scheme = 'http' if self.context is None else 'https'
        self.origin = f'{scheme}://127.0.0.1:{self.port}'
        self.url = self.origin + '/'
        return self

    async def __aexit__(self, kind, error, traceback):
        self.server.close()
        for peer in self.peers:
            peer.writer.transport.abort()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await turns(3)
        if error is None and self.failures:
            raise self.failures[0]

    async def serve(self, reader, writer):
        peer = Peer(reader, writer, len(self.peers))
        self.peers.append(peer)
        self.tasks.add(asyncio.current_task())
        try:
            await self.script(peer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client hung up, or the test is over
        except BaseException as error:
            self.failures.append(error)
        finally:
            writer.close()


class Answering:
    """A script that answers the requests, over whatever connections, with one raw response
    after the other, the last one again and again, and keeps what was asked."""

    def __init__(self, *responses: bytes, close_after: bool = False):
        self.responses = list(responses)
        self.close_after = close_after
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.connections: list[int] = []  # the index of the connection of each request

    async def __call__(self, peer):
        while True:
            head = await peer.read_head()
            length = [line for line in head.lower().split(b'\r\n')
                      if line.startswith(b'content-length:')]
            self.bodies.append(await peer.read(int(length[0][15:])) if length else b'')
            self.heads.append(head)
            self.connections.append(peer.index)
            response = self.responses.pop(0) if len(self.responses) > 1 else self.responses[0]
            await peer.send(response)
            if self.close_after:
                return


@contextlib.asynccontextmanager
async def pool(**options):
    """A pool's `request`, and afterwards its `close`."""
    request, close = Pool(**options)
    try:
        yield request
    finally:
        await close()


async def get(request, url, **kwargs):
    code, headers, body = await request(b'GET', url, **kwargs)
    return code, headers, await buffered(body)


OK = b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok'
