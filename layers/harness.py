"""What the tests of the layers share: servers scripted in bytes, on both loops."""

import asyncio
import contextlib
import functools
import gc
import inspect
import os
import pathlib
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable

import pytest
import trustme

import lowhaio
from lowhaio import Pool, buffered

try:
    import uvloop
except ImportError:
    uvloop = None

LOOPS = {'asyncio': asyncio.SelectorEventLoop}
if uvloop is not None:
    LOOPS['uvloop'] = uvloop.new_event_loop
    uvloop.new_event_loop().close()  # the first one opens descriptors that stay

# So that a hang is a failure. Nothing waits for it to pass.
PATIENCE = 60

OK = b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok'


# ------------------------------------------------------------------------------- the loops


def on_loops(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test function on each loop, and look at what it leaves behind."""
    @pytest.mark.parametrize('loop_name', LOOPS)
    @functools.wraps(test)
    def wrapper(*args, loop_name, **kwargs):
        with nothing_left() as errors:
            run_on(loop_name, errors, test, *args, **kwargs)

    # pytest finds the fixtures and parameters that a test wants in its signature.
    signature = inspect.signature(test)
    wrapper.__signature__ = signature.replace(parameters=[
        *signature.parameters.values(),
        inspect.Parameter('loop_name', inspect.Parameter.KEYWORD_ONLY)])
    return wrapper


def run_on(loop_name, errors, test, /, *args, **kwargs):
    def on_error(loop, context):
        # In debug mode, asyncio's servers report the clients that refuse their handshake.
        if context['message'] != 'Error on transport creation for incoming connection':
            errors.append(context)

    def make_task(loop, coro, **kwargs):
        # A generator that was dropped unfinished is closed by the loop, in a task.
        if type(coro).__name__.startswith('async_generator'):
            errors.append(f'a task for {coro!r}')
        return asyncio.Task(coro, loop=loop, **kwargs)

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(on_error)
        loop.set_task_factory(make_task)
        async with asyncio.timeout(PATIENCE):
            await test(*args, **kwargs)
        gc.collect()
        # What is done by callbacks of what has just ended is part of the test.
        await turns(5)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with asyncio.Runner(loop_factory=LOOPS[loop_name]) as runner:
        runner.run(main())


@contextlib.contextmanager
def nothing_left():
    """Yields a list for the errors that loops are told of."""
    # What is there already is none of the test's. Without this, each collection would look at all
    # that pytest keeps of the tests before, and that would be half of the time of the whole run.
    gc.freeze()
    before = open_descriptors()
    errors = []
    yield errors
    gc.collect()
    assert errors == []
    assert open_descriptors() == before


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


# ----------------------------------------------------------------------------- the servers


class Peer:
    """The server's end of a connection."""

    def __init__(self, reader, writer, index):
        self.reader = reader
        self.writer = writer
        self.index = index
        sock = writer.get_extra_info('socket')
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def read_head(self) -> bytes:
        return await self.reader.readuntil(b'\r\n\r\n')

    async def read(self, length: int) -> bytes:
        return await self.reader.readexactly(length)

    async def read_body(self, head: bytes) -> bytes:
        """As it is sent: with the framing of its chunks, if it is chunked."""
        if value(head, b'transfer-encoding') == b'chunked':
            return await self.read_chunked()
        return await self.read(int(value(head, b'content-length') or 0))

    async def read_chunked(self) -> bytes:
        body = b''
        while not re.match(rb'0+\r\n', line := await self.reader.readline()):
            body += line + await self.read(int(line.partition(b';')[0], 16) + 2)
        while line != b'\r\n':
            body += line
            line = await self.reader.readline()
        return body + line

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


@contextlib.contextmanager
def rclone_serving(folder: pathlib.Path, *options: str):
    """The URL of a server of S3's protocol, whose buckets are in the folder."""
    program = pathlib.Path(sys.executable).with_name('rclone')
    with subprocess.Popen(
            [program, 'serve', 's3', '--addr', '127.0.0.1:0', *options, folder],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stderr:
                if match := re.search(r'Starting s3 server on \[(http://.*)/\]', line):
                    break
            yield match[1]
        finally:
            process.kill()
            process.stderr.read()


class Answering:
    """A script that answers the requests, over whatever connections, with one raw response
    after the other, the last one again and again, and keeps what was asked. A response may be
    a function of the request's head and body; None closes the connection instead."""

    def __init__(self, *responses):
        self.responses = list(responses)
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.connections: list[int] = []  # the index of the connection of each request

    async def __call__(self, peer):
        while True:
            head = await peer.read_head()
            body = await peer.read_body(head)
            self.heads.append(head)
            self.bodies.append(body)
            self.connections.append(peer.index)
            response = self.responses.pop(0) if len(self.responses) > 1 else self.responses[0]
            if callable(response):
                response = response(head, body)
            if response is None:
                return
            await peer.send(response)

    @property
    def lines(self) -> list[str]:
        """Method and target of each request."""
        return [head.partition(b' HTTP/')[0].decode() for head in self.heads]


def value(head: bytes, name: bytes) -> bytes | None:
    """Of the request's only field of that name, in lower case."""
    values = values_of(head, name)
    assert len(values) <= 1
    return values[0] if values else None


def values_of(head: bytes, name: bytes) -> list[bytes]:
    return re.findall(rb'(?im)^' + re.escape(name) + rb': *(.*?)\r$', head)


def response(code: int = 200, body: bytes = b'', *fields: bytes) -> bytes:
    """A whole response, with its fields as lines."""
    lines = [b'HTTP/1.1 %d Reason' % code, *fields, b'content-length: %d' % len(body)]
    return b'\r\n'.join(lines) + b'\r\n\r\n' + body


@contextlib.asynccontextmanager
async def pool(**options):
    """A pool's `request`, and afterwards its `close`."""
    request, close = Pool(**options)
    try:
        yield request
    finally:
        await close()


def connecting_to(**ports: int):
    """A `get_connection` for which all hosts are here: the port is that of the scheme."""
    async def get_connection(scheme, host, port):
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ('127.0.0.1', ports[scheme]))
        except BaseException:
            sock.close()
            raise
        return sock

    return get_connection


async def get(request, url, **kwargs):
    code, headers, body = await request(b'GET', url, **kwargs)
    return code, headers, await buffered(body)


@functools.lru_cache
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(*hosts: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority().issue_cert(*hosts).configure_cert(context)
    return context


def trusting_context() -> ssl.SSLContext:
    # Given these, it does not read those of the system, which takes 30 ms.
    return ssl.create_default_context(cadata=authority().cert_pem.bytes().decode())


# ------------------------------------------------------------------- the examples of READMEs


def python_blocks(readme: pathlib.Path) -> list[str]:
    return re.findall(r'(?<=^```python\n).*?(?=^```$)', readme.read_text(encoding='utf-8'),
                      re.MULTILINE | re.DOTALL)


def run_block(block: str) -> None:
    exec(compile(block, 'README.md', 'exec'), {'__name__': '__main__'})


@contextlib.contextmanager
def internet(script, *hosts: str):
    """All hosts, over http and https, are servers that run the script, in a thread.

    Those of https have certificates for the hosts. For all who import `Pool` from now on.
    """
    context = server_context(*hosts or ('*.example.com',))
    ports = {}
    started = threading.Event()
    stop = None
    failures = []

    async def serve():
        nonlocal stop
        stopped = asyncio.Event()
        stop = functools.partial(asyncio.get_running_loop().call_soon_threadsafe, stopped.set)
        async with Server(script) as http, Server(script, context) as https:
            ports.update(http=http.port, https=https.port)
            started.set()
            await stopped.wait()

    def run():
        try:
            asyncio.run(serve())
        except BaseException as error:
            failures.append(error)
            started.set()

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(lowhaio, 'Pool', functools.partial(
            Pool, get_connection=connecting_to(**ports), get_ssl_context=trusting_context))
        try:
            yield
        finally:
            if stop is not None:
                stop()
            thread.join()
    if failures:
        raise failures[0]
