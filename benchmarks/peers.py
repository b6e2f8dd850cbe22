"""The peers that are measured, as clients.py describes a client."""
import contextlib
import importlib
import os
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from setting import FIELDS, FOREVER, MANY, length_of

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

        async def get_with_fields(url):
            async with session.get(url, headers=FIELDS) as response:
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

        yield SimpleNamespace(
            get=get, get_with_fields=get_with_fields, post=post, stream=stream, upload=upload)


@contextlib.asynccontextmanager
async def httpx_like(setup, module, make_client):
    """A client of httpx or of httpx2, by a class or function that has the options of its own."""
    httpx = importlib.import_module(module)
    # The transports of aiohttp take None to be their default.
    limits = httpx.Limits(
        max_connections=MANY, max_keepalive_connections=MANY, keepalive_expiry=FOREVER)
    async with make_client(
            verify=setup.context, limits=limits, timeout=FOREVER, trust_env=False) as client:
        async def get(url, **options):
            response = await client.get(url, **options)
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

        yield SimpleNamespace(
            get=get, get_with_fields=partial(get, headers=FIELDS), post=post, stream=stream,
            upload=upload)


def httpx(setup):
    from httpx import AsyncClient
    return httpx_like(setup, 'httpx', AsyncClient)


def httpx2(setup):
    from httpx2 import AsyncClient
    return httpx_like(setup, 'httpx2', AsyncClient)


def httpx_aiohttp(setup):
    from httpx_aiohttp import HttpxAiohttpClient
    return httpx_like(setup, 'httpx', HttpxAiohttpClient)


def httpx2_aiohttp(setup):
    from openai import DefaultAioHttpClient
    return httpx_like(setup, 'httpx2', DefaultAioHttpClient)


@contextlib.asynccontextmanager
async def httpcore(setup):
    import httpcore
    async with httpcore.AsyncConnectionPool(
            ssl_context=setup.context, max_connections=None, max_keepalive_connections=None,
            keepalive_expiry=FOREVER) as pool:
        async def get(url, **options):
            response = await pool.request('GET', url, **options)
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

        yield SimpleNamespace(
            get=get, get_with_fields=partial(get, headers=FIELDS), post=post, stream=stream,
            upload=upload)


@contextlib.asynccontextmanager
async def niquests(setup):
    import niquests
    async with niquests.AsyncSession(
            pool_connections=MANY, pool_maxsize=setup.concurrency, verify=str(setup.ca),
            timeout=FOREVER) as session:
        session.trust_env = False

        async def get(url, **options):
            response = await session.get(url, **options)
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

        yield SimpleNamespace(
            get=get, get_with_fields=partial(get, headers=FIELDS), post=post, stream=stream,
            upload=upload)


# Peers in Rust and C
# -------------------

@contextlib.asynccontextmanager
async def wreq(setup):
    import wreq
    client = wreq.Client(
        tls_verify=Path(setup.ca), http1_only=True, no_proxy=True,
        pool_idle_timeout=timedelta(seconds=FOREVER), pool_max_idle_per_host=MANY,
        pool_max_size=MANY)

    async def get(url, **options):
        async with await client.get(url, **options) as response:
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

    yield SimpleNamespace(
        get=get, get_with_fields=partial(get, headers=FIELDS), post=post, stream=stream,
        upload=upload)


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

        async def get_with_fields(url):
            response = await client.get(url).headers(FIELDS).build().send()
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

        yield SimpleNamespace(
            get=get, get_with_fields=get_with_fields, post=post, stream=stream, upload=upload)


@contextlib.asynccontextmanager
async def pyqwest(setup):
    from pyqwest import Client, HTTPTransport, HTTPVersion
    async with HTTPTransport(
            tls_ca_cert=Path(setup.ca).read_bytes(), http_version=HTTPVersion.HTTP1,
            pool_idle_timeout=FOREVER, pool_max_idle_per_host=MANY) as transport:
        client = Client(transport)

        async def get(url, **options):
            response = await client.get(url, **options)
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

        yield SimpleNamespace(
            get=get, get_with_fields=partial(get, headers=FIELDS), post=post, stream=stream,
            upload=upload)


@contextlib.asynccontextmanager
async def curl_cffi(setup):
    from curl_cffi import CurlMOpt
    from curl_cffi.requests import AsyncSession
    async with AsyncSession(
            max_clients=setup.concurrency, verify=str(setup.ca), trust_env=False,
            timeout=FOREVER) as session:
        session.acurl.setopt(CurlMOpt.MAXCONNECTS, MANY)

        async def get(url, **options):
            response = await session.get(url, **options)
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

        yield SimpleNamespace(
            get=get, get_with_fields=partial(get, headers=FIELDS), post=post, stream=stream,
            upload=upload)


# These two take no iterator as the body of a request, so they upload nothing.

@contextlib.asynccontextmanager
async def impit(setup):
    # No option of this client has other certificates than those of the system.
    os.environ['SSL_CERT_FILE'] = str(setup.ca)
    from impit import AsyncClient
    async with AsyncClient(timeout=FOREVER) as client:
        async def get(url, **options):
            response = await client.get(url, **options)
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
                async for chunk in response.aiter_bytes():
                    got += len(chunk)
            return got

        yield SimpleNamespace(
            get=get, get_with_fields=partial(get, headers=FIELDS), post=post, stream=stream)


@contextlib.asynccontextmanager
async def primp(setup):
    from primp import AsyncClient
    client = AsyncClient(ca_cert_file=str(setup.ca), timeout=FOREVER)

    async def get(url, **options):
        response = await client.get(url, **options)
        assert response.status_code == 200, response.status_code
        return len(response.content)

    async def post(url, data):
        response = await client.post(url, content=data)
        assert response.status_code == 200, response.status_code
        return len(response.content)

    async def stream(url):
        got = 0
        response = await client.get(url, stream=True)
        assert response.status_code == 200, response.status_code
        async for chunk in response.aiter_bytes():
            got += len(chunk)
        return got

    yield SimpleNamespace(
        get=get, get_with_fields=partial(get, headers=FIELDS), post=post, stream=stream)
