"""What docs/troubleshooting.md says is printed when something goes wrong.

The tests make each mistake of the page, in its order.
"""

import asyncio
import concurrent.futures
import datetime
import functools
import gc
import gzip
import logging
import os
import pathlib
import re
import signal
import socket
import ssl
import subprocess
import sys
import tempfile

import aiodnsresolver
import pytest
from cryptography import x509

from lowhaio import HttpLoggerAdapter, Pool, buffered, streamed
from lowhaio_compression import decompressed  # noqa: E402
from lowhaio_redirect import redirectable  # noqa: E402
from lowhaio_proxy import proxied_pool
from lowhaio_retry import retry  # noqa: E402
from tests.harness import (
    CLOCKED,
    LOOPS,
    OK,
    PATIENCE,
    ROOT,
    SILENCE,
    UNFINISHED,
    Answering,
    NameFiles,
    Peer,
    ScriptedNameserver,
    Server,
    always,
    as_printed,
    bound_to,
    certified,
    default_of,
    failure,
    full_backlog,
    get,
    holding,
    listening,
    measured,
    no_descriptor_left,
    of_length,
    on_loops,
    pool,
    private_authority,
    resolving,
    run_script,
    strict_context,
    trusting,
    turns,
)

TROUBLES = re.findall(
    r'^> `(.+)`$', (ROOT / 'docs' / 'troubleshooting.md').read_text(encoding='utf-8'),
    re.MULTILINE)


def routed(address, **options):
    """A pool for which www.example.com is 192.0.2.1, and that is a server of ours."""
    return pool(**{'get_dns_resolver': always('192.0.2.1'), 'get_sock': socks_to(address),
                   'get_ssl_context': trusting, **options})


def socks_to(address):
    def get_sock(family):
        sock = SockTo(family)
        sock.setblocking(False)
        sock.address = address
        return sock

    return get_sock


async def said(address, method=b'GET', url='http://www.example.com/', options=(), **kwargs):
    async with routed(address, **dict(options)) as request:
        return as_printed(await failure(request(method, url, **kwargs)))


async def troubles_of_arguments(address):
    async def in_memory():
        return b'ok'

    async def strings():
        yield 'ok'

    yield await said(address, 'GET')
    yield await said(address, headers=(('accept', '*/*'),))
    yield await said(address, headers={b'accept': b'*/*'})
    yield await said(address, url='www.example.com/')
    yield await said(address, params=((b'accept', b'*/*'),))
    yield await said(address, headers=((b'x-token', b'secret\n'),))
    yield await said(address, url='http://www.example.com/\n')
    yield await said(address, url='http://user:password@www.example.com/')
    yield await said_without_idna(address)
    put = functools.partial(said, address, b'PUT', headers=of_length(2))
    yield await put(headers=(*of_length(2), CHUNKED))
    yield await put(headers=of_length(2) * 2)
    yield await put(headers=((b'expect', b'100-continue'),))
    yield await put(body=b'ok')
    yield await put(body=in_memory)
    yield await put(body=strings)
    yield await put(body=streamed(b'ok'), headers=())
    chunks = streamed(b'ok')()
    assert [chunk async for chunk in chunks] == [b'ok']
    yield await put(body=lambda: chunks)
    yield await put(body=streamed(b'hello'))
    yield await said_of_a_body_made_once()
    yield await put(headers=(CHUNKED,), body=streamed(b'hello'))
    yield await put(headers=((b'transfer-encoding', b'gzip'),), body=streamed(b'hello'))


CHUNKED = (b'transfer-encoding', b'chunked')


async def said_without_idna(address):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(sys.modules, 'idna', None)
        return await said(address, url='http://faß.de/')


async def said_of_a_body_made_once():
    busy = b'HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n'
    chunks = streamed(b'ok')()
    async with Server(Answering(busy, OK)) as server, routed(
            ('127.0.0.1', server.port)) as request:
        return as_printed(await failure(retry(request, code_intervals=((b'503', (0,)),))(
            b'PUT', 'http://www.example.com/', headers=of_length(2), body=lambda: chunks)))


async def troubles_of_names_and_connecting(address):
    async def nothing(host):
        raise aiodnsresolver.DnsRecordDoesNotExist

    async def refusing(reader, writer):
        await reader.readuntil(b'\r\n\r\n')
        writer.write(b'HTTP/1.1 407 Proxy Authentication Required\r\n\r\n')
        writer.close()

    yield await said(address, options={'get_dns_resolver': resolving(nothing)})
    with concurrent.futures.ThreadPoolExecutor() as executor:
        yield await asyncio.wrap_future(executor.submit(said_of_a_silent_nameserver))
    [sock] = bound_to('127.0.0.1')
    with sock:
        yield await said(sock.getsockname())
        with full_backlog(sock):
            yield await said(sock.getsockname(), options={'socket_timeout': 0.05})
    async with listening(refusing) as proxy:
        request, close = proxied_pool('http://192.0.2.1:3128', get_sock=socks_to(proxy))
        yield as_printed(await failure(request(b'GET', 'https://www.example.com/')))
        await close()
    with no_descriptor_left():
        yield await said(address, options={'get_sock': default_of('get_sock')})


def said_of_a_silent_nameserver():
    """By the resolver of a pool. It waits for seconds, so the clock of this loop stands."""
    async def main():
        with tempfile.TemporaryDirectory() as directory:
            async with ScriptedNameserver() as nameserver:
                nameserver.answers['www.example.com'] = SILENCE
                files = NameFiles(pathlib.Path(directory), nameserver)
                async with pool(get_dns_resolver=files.get_dns_resolver) as request:
                    _, task = await measured(failure(request(b'GET', 'http://www.example.com/')))
                    return as_printed(await task).replace('127.0.0.1', '192.0.2.53')

    with asyncio.Runner(loop_factory=CLOCKED['asyncio']) as runner:
        return runner.run(main())


async def troubles_of_tls(address):
    async def said_to_tls(*names, url='https://www.example.com/', options=(), **kwargs):
        async with Server(Answering(OK), certified(*names, **kwargs)) as server:
            return await said(('127.0.0.1', server.port), url=url, options=options)

    async def plain(peer):
        await peer.read(1)
        await peer.send(b'HTTP/1.1 400 Bad Request\r\n\r\n')

    async with Server(plain) as server:
        yield await said(('127.0.0.1', server.port), url='https://www.example.com/')
    yield await said_to_tls('www.example.com', url='http://www.example.com/')
    yield await said_to_tls(
        'www.example.com', not_after=datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC))
    yield await said_to_tls('example.com')
    yield await said_to_tls(
        'www.example.com', options={'get_ssl_context': ssl.create_default_context})
    root, server_side = private_authority('www.example.com', x509.KeyUsage)
    async with Server(Answering(OK), server_side) as server:
        yield await said(
            ('127.0.0.1', server.port), url='https://www.example.com/',
            options={'get_ssl_context': lambda: strict_context(root)})


async def troubles_of_responses(address):
    class Keeping(HttpLoggerAdapter):
        def log(self, level, message, *args, **kwargs):
            logged.append(f'{self.prefix(level)} {message % args}')

    def adapter(extra):
        return Keeping(logging.getLogger('quiet'), extra)

    logged = []
    async with Server(Peer.closed) as server:
        yield await said(('127.0.0.1', server.port), options={'socket_timeout': 0.05})
    for answer in (
            b'HTTP/1.1 200 OK\r\nset-cookie: a=' + b'b' * 20_000 + b'\r\n\r\n',
            b'HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nok',
            b'SSH-2.0-OpenSSH_9.2\r\n'):
        yield await said_of_answers(answer)
    url = 'http://www.example.com/'
    async with Server(Answering(UNFINISHED)) as server, routed(
            ('127.0.0.1', server.port), max_connections=1, pool_timeout=0.05) as request:
        _, _, body = await request(b'GET', url)
        yield as_printed(await failure(request(b'GET', url, get_logger_adapter=adapter)))
        yield logged[0]
        await body.aclose()
    async with routed(address) as request:
        _, _, body = await request(b'GET', url)
        assert await buffered(body) == b'ok'
        with pytest.raises(RuntimeError) as caught:
            await buffered(body)
        yield as_printed(caught.value)


async def said_of_answers(*answers, layer=lambda request: request):
    """And of the end of the connection after them."""
    async def script(peer):
        for answer in answers:
            await peer.read_head()
            await peer.send(answer)

    async with Server(script) as server, routed(('127.0.0.1', server.port)) as request:
        return as_printed(await failure(get(layer(request), 'http://www.example.com/')))


async def said_of_another_loop(address):
    async def body():
        await other.create_future()
        yield b'never'

    other = asyncio.new_event_loop()
    try:
        return await said(address, method=b'PUT', body=body)
    finally:
        other.close()


USED_BEFORE_A_FORK = """
import asyncio, os, socket, sys
from lowhaio import Pool

async def get_connection(*_):
    return socket.create_connection((sys.argv[1], int(sys.argv[2])))

async def main():
    request, _ = Pool(get_connection=get_connection, keep_alive_timeout=0)
    await request(b'GET', 'http://www.example.com/')
    pid = os.fork()
    if not pid:
        try:
            await request(b'GET', 'http://www.example.com/')
        except Exception as error:
            print(f'{type(error).__name__}: {error}', flush=True)
        os._exit(0)
    os.waitpid(pid, 0)

asyncio.run(main())
"""


async def troubles_of_readers(address):
    async with Server(holding(UNFINISHED)) as server, routed(
            ('127.0.0.1', server.port)) as request:
        _, _, body = await request(b'GET', 'http://www.example.com/')
        reading = asyncio.create_task(buffered(body))
        await turns(5)
        yield as_printed(await failure(anext(body)))
        await body.aclose()
        yield as_printed(await failure(reading))
        _, _, body = await request(b'GET', 'http://www.example.com/')
        yield as_printed(await failure(body.send(b'hello')))
        await body.aclose()

    async def without_reading(peer):
        await peer.read_head()
        peer.writer.transport.pause_reading()
        await peer.send(UNFINISHED)
        await is_over.wait()

    async def content():
        while True:
            yield bytes(65536)

    is_over = asyncio.Event()
    async with Server(without_reading) as server, routed(
            ('127.0.0.1', server.port), socket_timeout=0.05) as request:
        _, _, body = await request(
            b'PUT', 'http://www.example.com/', headers=of_length(10 ** 9), body=content)
        yield as_printed(await failure(buffered(body)))
        is_over.set()


async def troubles_of_layers(address):
    moved = b'HTTP/1.1 302 Found\r\ncontent-length: 0\r\nlocation: %b\r\n\r\n'
    yield await said_of_answers(*[moved % b'/'] * 21, layer=redirectable)
    yield await said_of_answers(moved % b'ftp://www.example.com/', layer=redirectable)
    content = gzip.compress(bytes(1000))
    yield await said_of_answers(
        b'HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n%b' % (
            len(content), content), layer=functools.partial(decompressed, max_length=100))


async def troubles_of_pools(address):
    url = 'http://www.example.com/'
    async with routed(address) as request:
        with pytest.raises(TypeError) as caught, pytest.warns(RuntimeWarning) as warned:
            code, headers, body = request(b'GET', url)
        yield as_printed(caught.value)
        yield as_printed(warned[0].message)
        await get(request, url)
        with concurrent.futures.ThreadPoolExecutor() as executor:
            other = executor.submit(asyncio.run, failure(request(b'GET', url)))
            yield as_printed(await asyncio.wrap_future(other))
    yield await said_of_another_loop(address)
    with concurrent.futures.ThreadPoolExecutor() as executor:
        forked = executor.submit(run_script, USED_BEFORE_A_FORK, address[0], str(address[1]))
        # On a busy machine, asyncio's debug mode tells of what it takes for slow.
        yield [line for line in (await asyncio.wrap_future(forked)).stdout.splitlines()
               if not line.startswith('Executing <')][-1]
    async with Server(Answering(OK)) as server:
        other_request, close = Pool()
        await get(other_request, server.url)
        with concurrent.futures.ThreadPoolExecutor() as executor:
            other = executor.submit(asyncio.run, failure(close()))
            yield as_printed(await asyncio.wrap_future(other))
        await close()
    yield as_printed(await failure(request(b'GET', url)))


@on_loops
async def test_what_goes_wrong_is_printed_as_the_page_says():
    async with Server(Answering(OK)) as server:
        printed = [text for troubles in (
            troubles_of_arguments, troubles_of_names_and_connecting, troubles_of_tls,
            troubles_of_responses, troubles_of_readers, troubles_of_layers, troubles_of_pools)
            async for text in troubles(('127.0.0.1', server.port))]
    assert printed == TROUBLES[:-2]


@pytest.mark.parametrize('loop_name', LOOPS)
def test_a_pool_that_was_not_closed_is_warned_of_as_the_page_says(loop_name, plain_website):
    async def main():
        request, close = Pool()
        await get(request, plain_website)

    with pytest.warns(ResourceWarning) as warned:  # noqa: PT031
        with asyncio.Runner(loop_factory=LOOPS[loop_name]) as runner:
            runner.run(main())
        del runner
        gc.collect()
    assert as_printed(warned[0].message) == TROUBLES[-2]


DOWNLOAD = '''
import asyncio, signal, sys
from lowhaio import Pool

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it

async def main():
    request, close = Pool()
    code, headers, body = await request(b'GET', sys.argv[2])
    async for chunk in body:
        print(chunk, flush=True)

if sys.argv[1] == 'uvloop':
    from uvloop import new_event_loop
else:
    new_event_loop = None
with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
'''


@pytest.mark.parametrize('loop_name', LOOPS)
def test_an_interrupted_download_prints_what_the_page_says(loop_name):
    with socket.create_server(('127.0.0.1', 0)) as server:
        url = f'http://127.0.0.1:{server.getsockname()[1]}/'
        with subprocess.Popen(
                [sys.executable, '-X', 'dev', '-W', 'error', '-c', DOWNLOAD, loop_name, url],
                env={**os.environ, 'PYTHONPATH': str(ROOT)}, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
            sock, _ = server.accept()
            with sock:
                sock.sendall(UNFINISHED)
                child.stdout.readline()
                child.send_signal(signal.SIGINT)
                printed = child.communicate(timeout=PATIENCE)[1].splitlines()
    # Nothing but the traceback: no task, connection or warning is left to complain.
    assert printed[0] == 'Traceback (most recent call last):'
    assert printed[-1] == TROUBLES[-1]
    assert not re.search('Warning|ignored|never retrieved', ''.join(printed))


# ------------------------------------------------------------------------------- examples, package


class SockTo(socket.socket):
    """Connects to one address, whatever it is told."""

    address = None

    def connect(self, address):
        super().connect(self.address)
