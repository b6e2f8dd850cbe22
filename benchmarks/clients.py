"""The clients that are measured, each behind the same four coroutine functions.

A client is a function that takes a `Setup` and returns an async context manager, which yields

    get(url)                     GET, which reads all of the content at once
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
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

FOREVER = 3600  # seconds
MANY = 100_000  # connections


class Setup:
    def __init__(self, ca, nameserver, concurrency, is_closing):
        self.ca = ca
        self.nameserver = tuple(nameserver)
        self.concurrency = concurrency
        # Whether the server closes the connection after each response.
        self.is_closing = is_closing

    @functools.cached_property
    def context(self):
        context = ssl.create_default_context(cafile=self.ca)
        context.set_alpn_protocols(['http/1.1'])
        return context

    def resolver(self, **kwargs):
        """A resolver that asks our nameserver, whose records stay fresh. Those of the file of
        hosts never are."""
        from aiodnsresolver import Resolver

        async def get_host(*_):
            return None

        async def get_nameservers(*_):
            yield 1, self.nameserver

        return Resolver(get_host=get_host, get_nameservers=get_nameservers, **kwargs)


def length_of(size):
    return {'content-length': str(size)}


# The floor, which is what the loop and the socket cost
# -----------------------------------------------------

class FloorConnection:
    def __init__(self, loop, setup, url, message):
        self.loop = loop
        self.sock = connect(setup, url)
        self.message = message
        # All responses are as long as the first one.
        self.length, self.content = exchange_blocking(self.sock, message)

        self.sock.setblocking(False)
        loop.add_reader(self.sock, self.read)

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
        self.loop.remove_reader(self.sock)
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


@contextlib.asynccontextmanager
async def floor(setup):
    """The least that a client could do.

    For small requests that is `add_reader` once for each connection, and then `send`, a future and
    `recv`, with nothing parsed. For bulk, and for connections that serve one request, it is a
    blocking loop of `recv_into` or `sendall`.
    """
    loop = asyncio.get_running_loop()
    idle = defaultdict(list)
    buffer = bytearray(262144)
    sock = session = None

    async def exchange(url, message):
        connections = idle[message]
        connection = connections.pop() if connections else FloorConnection(
            loop, setup, url, message)
        await connection.exchange()
        connections.append(connection)
        return connection.content

    async def exchange_and_close(url, message):
        nonlocal session
        with connect(setup, url, session) as sock:
            _, content = exchange_blocking(sock, message)
            session = sock.session if isinstance(sock, ssl.SSLSocket) else None
        return content

    @functools.cache
    def message_of(url):
        return request_message('GET', url)

    async def get(url):
        if setup.is_closing:
            return await exchange_and_close(url, message_of(url))
        return await exchange(url, message_of(url))

    @functools.cache
    def post_of(url, data):
        return request_message('POST', url, f'content-length: {len(data)}\r\n', data)

    async def post(url, data):
        return await exchange(url, post_of(url, data))

    async def download(url):
        nonlocal sock
        sock = sock or connect(setup, url)
        sock.sendall(request_message('GET', url))
        got = sock.recv_into(buffer)
        head, _, content = bytes(buffer[:got]).partition(b'\r\n\r\n')
        length = int(re.search(rb'content-length: (\d+)', head, re.IGNORECASE)[1])
        got = len(content)
        while got < length:
            got += sock.recv_into(buffer)
        return got

    async def upload(url, chunks, size):
        nonlocal sock
        sock = sock or connect(setup, url)
        sock.sendall(request_message('PUT', url, f'content-length: {size}\r\n'))
        chunk = await anext(chunks())
        for _ in range(size // len(chunk)):
            sock.sendall(chunk)
        response = sock.recv(65536)
        assert response.startswith(b'HTTP/1.1 20'), response
        return 0

    yield SimpleNamespace(get=get, post=post, stream=get, download=download, upload=upload)
    for connection in itertools.chain.from_iterable(idle.values()):
        connection.close()
    if sock is not None:
        sock.close()


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

    yield SimpleNamespace(get=get, post=post, stream=stream, upload=upload)
    await close()


@contextlib.asynccontextmanager
async def lowhaio_without_turns(setup):
    """lowhaio with downloads that never give other tasks a turn, to see what that would save."""
    import lowhaio as module
    module.MAX_BURST = sys.maxsize
    async with lowhaio(setup) as client:
        yield client


# Python peers
# ------------

@contextlib.asynccontextmanager
async def aiohttp(setup):
    import aiohttp
    connector = aiohttp.TCPConnector(limit=0, ssl=setup.context, keepalive_timeout=FOREVER)
    async with aiohttp.ClientSession(connector=connector) as session:
        async def get(url):
            async with session.get(url) as response:
                assert response.status == 200, response.status
                return len(await response.read())

        async def post(url, data):
            async with session.post(url, data=data) as response:
                assert response.status == 200, response.status
                return len(await response.read())

        async def stream(url):
            got = 0
            async with session.get(url) as response:
                assert response.status == 200, response.status
                async for chunk in response.content.iter_any():
                    got += len(chunk)
            return got

        async def upload(url, chunks, size):
            async with session.put(url, data=chunks(), headers=length_of(size)) as response:
                assert response.status in (201, 204), response.status
                return len(await response.read())

        yield SimpleNamespace(get=get, post=post, stream=stream, upload=upload)


@contextlib.asynccontextmanager
async def httpx(setup):
    import httpx
    limits = httpx.Limits(
        max_connections=None, max_keepalive_connections=None, keepalive_expiry=FOREVER)
    async with httpx.AsyncClient(
            verify=setup.context, limits=limits, timeout=FOREVER, trust_env=False) as client:
        async def get(url):
            response = await client.get(url)
            assert response.status_code == 200, response.status_code
            return len(response.content)

        async def post(url, data):
            response = await client.post(url, content=data)
            assert response.status_code == 200, response.status_code
            return len(response.content)

        async def stream(url):
            got = 0
            async with client.stream('GET', url) as response:
                assert response.status_code == 200, response.status_code
                async for chunk in response.aiter_raw():
                    got += len(chunk)
            return got

        async def upload(url, chunks, size):
            response = await client.put(url, content=chunks(), headers=length_of(size))
            assert response.status_code in (201, 204), response.status_code
            return len(response.content)

        yield SimpleNamespace(get=get, post=post, stream=stream, upload=upload)


@contextlib.asynccontextmanager
async def httpcore(setup):
    import httpcore
    async with httpcore.AsyncConnectionPool(
            ssl_context=setup.context, max_connections=None, max_keepalive_connections=None,
            keepalive_expiry=FOREVER) as pool:
        async def get(url):
            response = await pool.request('GET', url)
            assert response.status == 200, response.status
            return len(response.content)

        async def post(url, data):
            response = await pool.request('POST', url, content=data)
            assert response.status == 200, response.status
            return len(response.content)

        async def stream(url):
            got = 0
            async with pool.stream('GET', url) as response:
                assert response.status == 200, response.status
                async for chunk in response.aiter_stream():
                    got += len(chunk)
            return got

        async def upload(url, chunks, size):
            response = await pool.request('PUT', url, headers=length_of(size), content=chunks())
            assert response.status in (201, 204), response.status
            return len(response.content)

        yield SimpleNamespace(get=get, post=post, stream=stream, upload=upload)


@contextlib.asynccontextmanager
async def niquests(setup):
    import niquests
    async with niquests.AsyncSession(
            pool_connections=MANY, pool_maxsize=setup.concurrency, verify=str(setup.ca),
            timeout=FOREVER) as session:
        session.trust_env = False

        async def get(url):
            response = await session.get(url)
            assert response.status_code == 200, response.status_code
            return len(response.content)

        async def post(url, data):
            response = await session.post(url, data=data)
            assert response.status_code == 200, response.status_code
            return len(response.content)

        async def stream(url):
            got = 0
            response = await session.get(url, stream=True)
            assert response.status_code == 200, response.status_code
            async for chunk in await response.iter_raw(-1):
                got += len(chunk)
            await response.close()
            return got

        async def upload(url, chunks, _):
            # The body is always chunked. With a content-length, this client would send both, which
            # the server refuses.
            response = await session.put(url, data=chunks())
            assert response.status_code in (201, 204), response.status_code
            return len(response.content)

        yield SimpleNamespace(get=get, post=post, stream=stream, upload=upload)


# Peers in Rust and C
# -------------------

@contextlib.asynccontextmanager
async def wreq(setup):
    import wreq
    client = wreq.Client(
        tls_verify=Path(setup.ca), http1_only=True, no_proxy=True,
        pool_idle_timeout=timedelta(seconds=FOREVER), pool_max_idle_per_host=MANY,
        pool_max_size=MANY)

    async def get(url):
        async with await client.get(url) as response:
            assert response.status.as_int() == 200, response.status
            return len(await response.bytes())

    async def post(url, data):
        async with await client.post(url, body=data) as response:
            assert response.status.as_int() == 200, response.status
            return len(await response.bytes())

    async def stream(url):
        got = 0
        async with await client.get(url) as response:
            assert response.status.as_int() == 200, response.status
            async with response.stream() as chunks:
                async for chunk in chunks:
                    got += len(chunk)
        return got

    async def upload(url, chunks, size):
        async with await client.put(url, body=chunks(), headers=length_of(size)) as response:
            assert response.status.as_int() in (201, 204), response.status
            return len(await response.bytes())

    yield SimpleNamespace(get=get, post=post, stream=stream, upload=upload)


@contextlib.asynccontextmanager
async def pyreqwest(setup):
    from pyreqwest.client import ClientBuilder
    builder = ClientBuilder().add_root_certificate_pem(Path(setup.ca).read_bytes()).no_proxy()
    builder = builder.max_connections(None).pool_max_idle_per_host(MANY)
    async with builder.pool_idle_timeout(timedelta(seconds=FOREVER)).build() as client:
        async def get(url):
            response = await client.get(url).build().send()
            assert response.status == 200, response.status
            return len(await response.bytes())

        async def post(url, data):
            response = await client.post(url).body_bytes(data).build().send()
            assert response.status == 200, response.status
            return len(await response.bytes())

        async def stream(url):
            got = 0
            async with client.get(url).build_streamed() as response:
                assert response.status == 200, response.status
                while (chunk := await response.body_reader.read_chunk()) is not None:
                    got += len(chunk)
            return got

        async def upload(url, chunks, size):
            request = client.put(url).headers(length_of(size)).body_stream(chunks())
            response = await request.build().send()
            assert response.status in (201, 204), response.status
            return len(await response.bytes())

        yield SimpleNamespace(get=get, post=post, stream=stream, upload=upload)


@contextlib.asynccontextmanager
async def pyqwest(setup):
    from pyqwest import Client, HTTPTransport, HTTPVersion
    async with HTTPTransport(
            tls_ca_cert=Path(setup.ca).read_bytes(), http_version=HTTPVersion.HTTP1,
            pool_idle_timeout=FOREVER, pool_max_idle_per_host=MANY) as transport:
        client = Client(transport)

        async def get(url):
            response = await client.get(url)
            assert response.status == 200, response.status
            return len(response.content)

        async def post(url, data):
            response = await client.post(url, content=data)
            assert response.status == 200, response.status
            return len(response.content)

        async def stream(url):
            got = 0
            async with client.stream('GET', url) as response:
                assert response.status == 200, response.status
                async for chunk in response.content:
                    got += len(chunk)
            return got

        async def upload(url, chunks, size):
            response = await client.put(url, headers=length_of(size), content=chunks())
            assert response.status in (201, 204), response.status
            return len(response.content)

        yield SimpleNamespace(get=get, post=post, stream=stream, upload=upload)


@contextlib.asynccontextmanager
async def curl_cffi(setup):
    from curl_cffi import CurlMOpt
    from curl_cffi.requests import AsyncSession
    async with AsyncSession(
            max_clients=setup.concurrency, verify=str(setup.ca), trust_env=False,
            timeout=FOREVER) as session:
        session.acurl.setopt(CurlMOpt.MAXCONNECTS, MANY)

        async def get(url):
            response = await session.get(url)
            assert response.status_code == 200, response.status_code
            return len(response.content)

        async def post(url, data):
            response = await session.post(url, data=data)
            assert response.status_code == 200, response.status_code
            return len(response.content)

        async def stream(url):
            got = 0
            async with session.stream('GET', url) as response:
                assert response.status_code == 200, response.status_code
                async for chunk in response.aiter_content():
                    got += len(chunk)
            return got

        async def upload(url, chunks, size):
            # This client takes iterators, but not async ones.
            chunk = await anext(chunks())
            content = (chunk for _ in range(size // len(chunk)))
            response = await session.put(url, headers=length_of(size), content=content)
            assert response.status_code in (201, 204), response.status_code
            return len(response.content)

        yield SimpleNamespace(get=get, post=post, stream=stream, upload=upload)


# For each name, the client and the module that is imported for it.
CLIENTS = {
    'floor': (floor, None),
    'lowhaio': (lowhaio, 'lowhaio'),
    'lowhaio-0.0.89': (lowhaio, 'lowhaio'),
    'aiohttp': (aiohttp, 'aiohttp'),
    'httpx': (httpx, 'httpx'),
    'httpcore': (httpcore, 'httpcore'),
    'niquests': (niquests, 'niquests'),
    'wreq': (wreq, 'wreq'),
    'pyreqwest': (pyreqwest, 'pyreqwest.client'),
    'pyqwest': (pyqwest, 'pyqwest'),
    'curl_cffi': (curl_cffi, 'curl_cffi.requests'),
    'lowhaio-without-turns': (lowhaio_without_turns, None),
}
