"""The clients that are measured, each behind the same coroutine functions.

A client is a function that takes a `Setup` and returns an async context manager, which yields

    get(url)                     GET, which reads all of the content at once
    get_with_fields(url)         the same, with the `FIELDS` in the request
    post(url, data)              POST of a body that is in memory
    stream(url)                  GET, which reads the content chunk by chunk and keeps none of it
    upload(url, chunks, size)    PUT of what the async generator function yields

Each makes one request and returns how many bytes of content the response had. A status other than
200, 201 or 204 is an error. The limits of connections and of idle time are lifted, the certificate
of the server is trusted, and HTTP/1.1 is chosen. Everything else is the default of the client.
"""
import asyncio
import contextlib
import functools
import itertools
import re
import socket
import ssl
import sys
import urllib.parse
from collections import defaultdict
from types import SimpleNamespace

import peers
from setting import BYTE_FIELDS, FIELDS, FOREVER

# The floor, which is what the loop and the socket cost
# -----------------------------------------------------

class FloorConnection:
    def __init__(self, loop, setup, url, message):
        self.loop = loop
        self.sock = connect(setup, url)
        self.message = message
        # The first exchange, which tells how long all responses are.
        self.length, self.content = exchange_blocking(self.sock, message)

        self.sock.setblocking(False)
        loop.add_reader(self.sock.fileno(), self.read)

    def read(self):
        # This reads in the callback and not in the coroutine. The loop polls once more before the
        # coroutine runs, and would find the socket still readable and wake it in vain. One read
        # for each call is enough for TLS as well, as long as a response has only one record.
        try:
            self.missing -= len(self.sock.recv(65536))
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        if not self.missing:
            self.waiter.set_result(None)

    async def exchange(self):
        self.missing = self.length
        self.waiter = self.loop.create_future()
        self.sock.send(self.message)
        await self.waiter

    def close(self):
        self.loop.remove_reader(self.sock.fileno())
        self.sock.close()


def connect(setup, url, session=None):
    parts = urllib.parse.urlsplit(url)
    sock = socket.create_connection((parts.hostname, parts.port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if parts.scheme == 'https':
        sock = setup.context.wrap_socket(
            sock, server_hostname=parts.hostname, session=session)
    return sock


def request_message(method, url, fields='', data=b''):
    parts = urllib.parse.urlsplit(url)
    head = f'{method} {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\n{fields}\r\n'
    return head.encode() + data


def exchange_blocking(sock, message):
    """The length of the response, and the length of its content."""
    sock.sendall(message)
    data = sock.recv(65536)
    head, _, content = data.partition(b'\r\n\r\n')
    assert head.startswith(b'HTTP/1.1 20'), head
    got = len(content)
    length = re.search(rb'content-length: (\d+)', head, re.IGNORECASE)
    if length:
        while got < int(length[1]):
            got += len(sock.recv(65536))
        return len(head) + 4 + got, got
    if b'\r\ntransfer-encoding: chunked' not in head:
        return len(head) + 4, 0
    while not content.endswith(b'0\r\n\r\n'):
        content += sock.recv(65536)
    chunks = re.sub(rb'(?:\A|\r\n)[0-9a-f]+\r\n', b'', content[:-2])
    return len(head) + 4 + len(content), len(chunks)


class Floor:
    """The least that a client could do.

    For small requests that is `add_reader` once for each connection, and then `send`, a future and
    `recv`, with nothing parsed. For bulk, and for connections that serve one request, it is a
    blocking loop of `recv_into` or `sendall`.
    """

    def __init__(self, setup):
        self.setup = setup
        self.loop = asyncio.get_running_loop()
        self.idle = defaultdict(list)
        self.buffer = bytearray(262144)
        self.sock = self.session = None
        self.message = functools.cache(request_message)
        self.fields = ''.join(f'{name}: {value}\r\n' for name, value in FIELDS.items())

    async def exchange(self, url, message):
        connections = self.idle[message]
        if connections:
            connection = connections.pop()
            await connection.exchange()
        else:
            connection = FloorConnection(self.loop, self.setup, url, message)
        connections.append(connection)
        return connection.content

    def exchange_and_close(self, url, message):
        with connect(self.setup, url, self.session) as sock:
            _, content = exchange_blocking(sock, message)
            self.session = sock.session if isinstance(sock, ssl.SSLSocket) else None
        return content

    async def get(self, url):
        if self.setup.is_closing:
            return self.exchange_and_close(url, self.message('GET', url))
        return await self.exchange(url, self.message('GET', url))

    stream = get

    async def get_with_fields(self, url):
        return await self.exchange(url, self.message('GET', url, self.fields))

    async def post(self, url, data):
        return await self.exchange(
            url, self.message('POST', url, f'content-length: {len(data)}\r\n', data))

    async def download(self, url):
        sock = self.bulk_socket(url)
        sock.sendall(request_message('GET', url))
        got = sock.recv_into(self.buffer)
        head, _, content = bytes(self.buffer[:got]).partition(b'\r\n\r\n')
        length = int(re.search(rb'content-length: (\d+)', head, re.IGNORECASE)[1])
        got = len(content)
        while got < length:
            got += sock.recv_into(self.buffer)
        return got

    async def upload(self, url, chunks, size):
        sock = self.bulk_socket(url)
        sock.sendall(request_message('PUT', url, f'content-length: {size}\r\n'))
        chunk = await anext(chunks())
        for _ in range(size // len(chunk)):
            sock.sendall(chunk)
        response = sock.recv(65536)
        assert response.startswith(b'HTTP/1.1 20'), response
        return 0

    def bulk_socket(self, url):
        self.sock = self.sock or connect(self.setup, url)
        return self.sock

    def close(self):
        for connection in itertools.chain.from_iterable(self.idle.values()):
            connection.close()
        if self.sock is not None:
            self.sock.close()


@contextlib.asynccontextmanager
async def floor(setup):
    with contextlib.closing(Floor(setup)) as client:
        yield client


# lowhaio
# -------

@contextlib.asynccontextmanager
async def lowhaio(setup):
    from lowhaio import Pool, buffered, streamed
    request, close = Pool(
        get_ssl_context=lambda: setup.context, get_dns_resolver=setup.resolver,
        keep_alive_timeout=FOREVER)

    async def get(url):
        code, _, body = await request(b'GET', url)
        assert code == b'200', code
        return len(await buffered(body))

    async def get_with_fields(url):
        code, _, body = await request(b'GET', url, headers=BYTE_FIELDS)
        assert code == b'200', code
        return len(await buffered(body))

    async def post(url, data):
        code, _, body = await request(
            b'POST', url, headers=((b'content-length', b'%d' % len(data)),), body=streamed(data))
        assert code == b'200', code
        return len(await buffered(body))

    async def stream(url):
        code, _, body = await request(b'GET', url)
        assert code == b'200', code
        got = 0
        async for chunk in body:
            got += len(chunk)
        return got

    async def upload(url, chunks, size):
        code, _, body = await request(
            b'PUT', url, headers=((b'content-length', b'%d' % size),), body=chunks)
        assert code in (b'201', b'204'), code
        return len(await buffered(body))

    yield SimpleNamespace(
        get=get, get_with_fields=get_with_fields, post=post, stream=stream, upload=upload)
    await close()


@contextlib.asynccontextmanager
async def lowhaio_without_turns(setup):
    """lowhaio with downloads that never give other tasks a turn, to see what that would save."""
    import lowhaio as module
    module.MAX_BURST = sys.maxsize
    async with lowhaio(setup) as client:
        yield client


# For each name: the client, the module that is imported for it, and the distributions that are
# installed for it, of which the first has its version.
CLIENTS = {
    'floor': (floor, None, ()),
    'lowhaio': (lowhaio, 'lowhaio', ()),
    'lowhaio-0.0.89': (lowhaio, 'lowhaio', ()),
    'aiohttp': (peers.aiohttp, 'aiohttp', ('aiohttp',)),
    'httpx2': (peers.httpx2, 'httpx2', ('httpx2',)),
    'httpx2-aiohttp': (peers.httpx2_aiohttp, 'openai', ('openai', 'httpx2', 'aiohttp')),
    'httpx': (peers.httpx, 'httpx', ('httpx',)),
    'httpx-aiohttp': (peers.httpx_aiohttp, 'httpx_aiohttp', ('httpx-aiohttp', 'httpx', 'aiohttp')),
    'httpcore': (peers.httpcore, 'httpcore', ('httpcore',)),
    'niquests': (peers.niquests, 'niquests', ('niquests',)),
    'wreq': (peers.wreq, 'wreq', ('wreq',)),
    'pyreqwest': (peers.pyreqwest, 'pyreqwest.client', ('pyreqwest',)),
    'pyqwest': (peers.pyqwest, 'pyqwest', ('pyqwest',)),
    'curl_cffi': (peers.curl_cffi, 'curl_cffi.requests', ('curl_cffi',)),
    'impit': (peers.impit, 'impit', ('impit',)),
    'primp': (peers.primp, 'primp', ('primp',)),
    'lowhaio-without-turns': (lowhaio_without_turns, None, ()),
}
