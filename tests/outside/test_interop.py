"""lowhaio against the HTTP servers that people run

test.py scripts its servers in bytes, so it knows only what its authors thought of. Here the bytes
are those of aiohttp, granian, gunicorn, hypercorn, uvicorn and waitress, in clear and in TLS:
every row of EXCHANGES, with every server of SERVERS. Whether a connection was used again is told
by the client's address as the server saw it, which each answer has in its field `x-client`.
"""

import asyncio
import contextlib
import hashlib
import http.client
import importlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme

from lowhaio import Pool, buffered, streamed

HERE = Path(__file__).parent
sys.path.append(str(HERE))

from interop_apps import LARGE  # noqa: E402

# The module of the event loop, if it is not that of asyncio: uvloop or rloop
LOOP = os.environ.get('LOWHAIO_TEST_LOOP')

# rloop 0.5.0 does not close the pair of sockets that wakes it up
pytestmark = [] if LOOP != 'rloop' else [
    pytest.mark.filterwarnings('ignore:.*socket:pytest.PytestUnraisableExceptionWarning')]

# In seconds. Each is many times what it takes, and there so that a hang becomes a failure
START_TIMEOUT = 30
STOP_TIMEOUT = 10
TEST_TIMEOUT = 30


#############
# The servers

# How to start each, after `python -m`. The socket already listens when the server inherits it, so
# there is no port to find out or to lose to somebody else.

def own_command(name):
    def get_args(sock, certificate_and_key):
        return ['interop_apps', name, str(sock.fileno()), *certificate_and_key]
    return get_args


def gunicorn_command(*worker_options):
    def get_args(sock, certificate_and_key):
        return [
            'gunicorn', '--bind', f'fd://{sock.fileno()}', '--no-control-socket', *worker_options,
            *with_options(('--certfile', '--keyfile'), certificate_and_key),
            'interop_apps:wsgi_app',
        ]
    return get_args


def get_hypercorn_args(sock, certificate_and_key):
    return [
        'hypercorn', '--bind', f'fd://{sock.fileno()}', '--workers', '0',
        *with_options(('--certfile', '--keyfile'), certificate_and_key),
        'interop_apps:asgi_app',
    ]


def get_granian_args(sock, certificate_and_key):
    return [
        'granian', '--interface', 'asgi', '--port', str(sock.getsockname()[1]),
        *with_options(('--ssl-certificate', '--ssl-keyfile'), certificate_and_key),
        'interop_apps:asgi_app',
    ]


def with_options(names, values):
    # No values, so no options either, in clear
    return [arg for pair in zip(names, values, strict=False) for arg in pair]


class Server(NamedTuple):
    get_args: object
    schemes: tuple = ('http', 'https')
    # Granian takes no socket. It sets SO_REUSEPORT, so it can listen on a port that a socket of
    # the test's, which never listens, keeps from everybody else
    takes_socket: bool = True


SERVERS = {
    'aiohttp': Server(own_command('aiohttp')),
    'granian': Server(get_granian_args, takes_socket=False),
    # Closes after each response
    'gunicorn-sync': Server(gunicorn_command('--worker-class', 'sync')),
    'gunicorn-gthread': Server(gunicorn_command('--worker-class', 'gthread', '--threads', '4')),
    'hypercorn': Server(get_hypercorn_args),
    'uvicorn-h11': Server(own_command('uvicorn-h11')),
    'uvicorn-httptools': Server(own_command('uvicorn-httptools')),
    # Has no TLS
    'waitress': Server(own_command('waitress'), schemes=('http',)),
}


class Origin(NamedTuple):
    server: str
    scheme: str
    port: int

    def url(self, target, host=None):
        # By name in TLS, as most certificates are for names; by address in clear
        host = host or {'http': '127.0.0.1', 'https': 'localhost'}[self.scheme]
        return f'{self.scheme}://{host}:{self.port}{target}'


ORIGINS = [(name, scheme) for name, server in SERVERS.items() for scheme in server.schemes]


@pytest.fixture(scope='module')
def authority():
    return trustme.CA()


@pytest.fixture(scope='module')
def certificate_and_key(authority, tmp_path_factory):
    issued = authority.issue_cert('localhost', '127.0.0.1')
    directory = tmp_path_factory.mktemp('certificate')
    certificate_path, key_path = directory / 'certificate.pem', directory / 'key.pem'
    certificate_path.write_bytes(b''.join(pem.bytes() for pem in issued.cert_chain_pems))
    key_path.write_bytes(issued.private_key_pem.bytes())
    return str(certificate_path), str(key_path)


@pytest.fixture(scope='module')
def get_ssl_context(authority):
    def get():
        context = ssl.create_default_context()
        authority.configure_trust(context)
        context.set_alpn_protocols(['http/1.1'])
        return context
    return get


# pytest runs all the tests of one parameter together, so each server starts once
@pytest.fixture(scope='module', params=ORIGINS, ids='-'.join)
def origin(request, certificate_and_key, get_ssl_context, tmp_path_factory):
    name, scheme = request.param
    server = SERVERS[name]
    directory = tmp_path_factory.mktemp(f'{name}-{scheme}')
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(('127.0.0.1', 0))
        found = Origin(name, scheme, sock.getsockname()[1])
        if server.takes_socket:
            sock.listen(128)
        args = server.get_args(sock, certificate_and_key if scheme == 'https' else ())
        with running(args, sock, directory) as (process, get_output):
            if server.takes_socket:
                # Else connections would still be accepted if the server ended, and never answered
                sock.close()
            wait_until_answers(found, process, get_output, get_ssl_context)
            yield found


@contextlib.contextmanager
def running(args, sock, directory):
    output = directory / 'output'
    python_path = [str(HERE), os.environ.get('PYTHONPATH', '')]
    with output.open('wb') as output_file:
        process = subprocess.Popen(
            # This suite makes an error of every warning, which is not meant for the servers
            [sys.executable, '-W', 'ignore', '-m', *args],
            cwd=directory,
            env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, python_path))},
            stdin=subprocess.DEVNULL, stdout=output_file, stderr=subprocess.STDOUT,
            pass_fds=[sock.fileno()],
            # A process group of its own: some servers have child processes
            start_new_session=True,
        )
    try:
        yield process, output.read_text
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        finally:
            # Usually nothing of the group is left
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until_answers(origin, process, get_output, get_ssl_context):
    deadline = time.monotonic() + START_TIMEOUT
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return get_once(origin, deadline, get_ssl_context)
        # The pause between two attempts, which ends early if the server does
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
    why = 'did not answer' if process.poll() is None else f'ended with {process.returncode}'
    pytest.fail(f'{origin.server} ({origin.scheme}) {why}. It wrote:\n{get_output()}')


def get_once(origin, deadline, get_ssl_context):
    options = {'timeout': max(0.1, deadline - time.monotonic())}
    connection = (
        http.client.HTTPSConnection('localhost', origin.port, context=get_ssl_context(), **options)
        if origin.scheme == 'https' else
        http.client.HTTPConnection('127.0.0.1', origin.port, **options)
    )
    with contextlib.closing(connection):
        connection.request('GET', '/hello')
        connection.getresponse().read()


###############
# The exchanges

def encoded(*pieces):
    # The client encodes no body. That is for its caller, which is this, to do
    return [b'%x\r\n%b\r\n' % (len(piece), piece) for piece in (*pieces, b'')]


def sha256(data):
    return hashlib.sha256(data).hexdigest().encode()


CHUNKED = (b'transfer-encoding', b'chunked')
CLOSE = (b'connection', b'close')
CONTINUE = (b'expect', b'100-continue')
LARGE_LENGTH = b'%d' % len(LARGE)
MIDDLE = LARGE[:100_000]
PIECES = [LARGE[i:i + 100_000] for i in range(0, len(LARGE), 100_000)]


class Exchange(NamedTuple):
    method: bytes
    target: str
    headers: tuple = ()
    pieces: tuple = ()
    http_version: bytes = b'HTTP/1.1'
    # And what is expected to come back, among other fields
    code: bytes = b'200'
    fields: tuple = ()
    absent: tuple = ()
    body: bytes = b''
    # Whether the connection must, or must not, serve the next request. None: as the response says
    persists: bool | None = None


EXCHANGES = {
    'get': Exchange(
        b'GET', '/hello', fields=((b'content-length', b'5'),), body=b'hello',
    ),
    'keep-alive': Exchange(
        b'GET', '/hello', fields=((b'content-length', b'5'),), body=b'hello', persists=True,
    ),
    'head': Exchange(
        b'HEAD', '/large', fields=((b'content-length', LARGE_LENGTH),),
    ),
    'post-content-length': Exchange(
        b'POST', '/echo', ((b'content-length', b'8'),), [b'some', b'data'],
        fields=((b'content-length', b'8'),), body=b'somedata',
    ),
    'post-chunked': Exchange(
        b'POST', '/echo', (CHUNKED,), encoded(b'a', b'0\r\n\r\n', MIDDLE, b'z'),
        fields=((b'content-length', b'100007'),), body=b'a0\r\n\r\n' + MIDDLE + b'z',
    ),
    'post-100-continue': Exchange(
        b'POST', '/echo', ((b'content-length', b'8'), CONTINUE), [b'some', b'data'],
        fields=((b'content-length', b'8'),), body=b'somedata',
    ),
    'large-down-content-length': Exchange(
        b'GET', '/large', fields=((b'content-length', LARGE_LENGTH),), body=LARGE,
    ),
    'large-down-chunked': Exchange(
        b'GET', '/large-chunked', fields=((b'transfer-encoding', b'chunked'),), body=LARGE,
    ),
    'large-down-until-close': Exchange(
        b'GET', '/large-chunked', http_version=b'HTTP/1.0',
        absent=(b'content-length', b'transfer-encoding'), body=LARGE, persists=False,
    ),
    'large-up-content-length': Exchange(
        b'POST', '/sha256', ((b'content-length', LARGE_LENGTH),), PIECES,
        fields=((b'content-length', b'64'),), body=sha256(LARGE),
    ),
    'large-up-chunked': Exchange(
        b'POST', '/sha256', (CHUNKED,), encoded(*PIECES),
        fields=((b'content-length', b'64'),), body=sha256(LARGE),
    ),
    'no-content-204': Exchange(
        b'GET', '/status-204', code=b'204', fields=((b'etag', b'"some-tag"'),),
    ),
    'not-modified-304': Exchange(
        b'GET', '/status-304', ((b'if-none-match', b'"some-tag"'),),
        code=b'304', fields=((b'etag', b'"some-tag"'),),
    ),
    'close-by-client': Exchange(
        b'GET', '/hello', (CLOSE,),
        fields=((b'content-length', b'5'),), body=b'hello', persists=False,
    ),
    'close-by-server': Exchange(
        b'GET', '/close', fields=((b'connection', b'close'),), body=b'closed', persists=False,
    ),
}

KEEPS_NONE = 'this worker closes after each response'
CLOSES_NONE = 'no WSGI application can have this worker close'
# To the client, the end of such a body is no different from a connection cut by an attacker
NO_CLOSE_NOTIFY = 'gunicorn ends TLS without a close_notify'
CHUNKED_ALWAYS = 'with httptools, uvicorn sends chunked to HTTP/1.0 as well'

LEFT_OUT = {
    ('gunicorn-sync', 'http', 'keep-alive'): KEEPS_NONE,
    ('gunicorn-sync', 'https', 'keep-alive'): KEEPS_NONE,
    ('gunicorn-sync', 'https', 'large-down-until-close'): NO_CLOSE_NOTIFY,
    ('gunicorn-gthread', 'http', 'close-by-server'): CLOSES_NONE,
    ('gunicorn-gthread', 'https', 'close-by-server'): CLOSES_NONE,
    ('gunicorn-gthread', 'https', 'large-down-until-close'): NO_CLOSE_NOTIFY,
    ('uvicorn-httptools', 'http', 'large-down-until-close'): CHUNKED_ALWAYS,
    ('uvicorn-httptools', 'https', 'large-down-until-close'): CHUNKED_ALWAYS,
}


@pytest.mark.parametrize('exchange_name', EXCHANGES)
def test_exchange(origin, exchange_name, get_ssl_context):
    if reason := LEFT_OUT.get((origin.server, origin.scheme, exchange_name)):
        pytest.skip(reason)
    exchange = EXCHANGES[exchange_name]

    async def test():
        async with pool(get_ssl_context, exchange.http_version) as request:
            headers = await received(request, origin, exchange)
            # The same connection must be good for another request, which proves that the first
            # response was read to its very end; unless one side said that it closes
            next_headers = await received(request, origin, EXCHANGES['get'])
        persists = exchange.persists
        if persists is None:
            persists = b'close' not in values(headers, b'connection')
        assert (client(headers) == client(next_headers)) == persists

    run(test())


@pytest.mark.parametrize('host', ['127.0.0.1', 'localhost'])
def test_host(origin, host, get_ssl_context):
    async def test():
        async with pool(get_ssl_context) as request:
            code, headers, body = await request(
                b'POST', origin.url('/echo', host), headers=((b'content-length', b'4'),),
                body=streamed(b'data'),
            )
            assert (code, await buffered(body)) == (b'200', b'data')
            assert client(headers).startswith(b'127.0.0.1:')

    run(test())


async def received(request, origin, exchange):
    """Makes the exchange, checks all that came, and returns the header fields"""
    code, headers, body = await request(
        exchange.method, origin.url(exchange.target), headers=exchange.headers,
        body=generator, body_args=(exchange.pieces,),
    )
    pieces = [piece async for piece in body]
    expected_values = {
        b'x-other': (b'a, b',),
        b'x-repeated': (b'one', b'two'),
        **{name: (value,) for name, value in exchange.fields},
        **dict.fromkeys(exchange.absent, ()),
    }

    assert code == exchange.code
    assert {name: values(headers, name) for name in expected_values} == expected_values
    assert summary(b''.join(pieces)) == summary(exchange.body)
    # A body that is large was not collected before the caller could have the first of it
    assert len(pieces) > 1 or len(exchange.body) < len(LARGE)
    return headers


async def generator(pieces):
    for piece in pieces:
        yield piece


def values(headers, wanted_name):
    return tuple(value for name, value in headers if name == wanted_name)


def client(headers):
    address, = values(headers, b'x-client')
    return address


def summary(data):
    # A difference of megabytes is of no use in the report of a failure, and takes minutes to make
    return data if len(data) < 100 else (len(data), sha256(data))


@contextlib.asynccontextmanager
async def pool(get_ssl_context, http_version=b'HTTP/1.1'):
    request, close = Pool(get_ssl_context=get_ssl_context, http_version=http_version)
    try:
        yield request
    finally:
        await close()


def run(coroutine):
    async def bounded():
        async with asyncio.timeout(TEST_TIMEOUT):
            await coroutine

    loop_factory = importlib.import_module(LOOP).new_event_loop if LOOP else None
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(bounded())
