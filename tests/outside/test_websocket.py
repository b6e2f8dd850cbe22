"""lowhaio-websocket against the WebSocket servers that people run

Its own tests script a server in frames. Here the frames are those of aiohttp, hypercorn, uvicorn
with both of its implementations, websockets, ws of Node, and gorilla/websocket and
golang.org/x/net/websocket of Go, in clear and in TLS.
"""

import asyncio
import os
import random
import shutil
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trustme

from lowhaio import HttpError, Pool
from lowhaio_websocket import WebSocketClosedError, WebSocketHandshakeError, websocket

sys.path.append(str(Path(__file__).parent))

from test_interop import START_TIMEOUT, TEST_TIMEOUT, running  # noqa: E402

# The module of the event loop, if it is not that of asyncio: uvloop or rloop
LOOP = os.environ.get('LOWHAIO_TEST_LOOP')

pytestmark = [] if LOOP != 'rloop' else [
    pytest.mark.filterwarnings('ignore:.*socket:pytest.PytestUnraisableExceptionWarning')]

SERVERS = ['websockets', 'aiohttp', 'uvicorn-websockets', 'uvicorn-wsproto', 'hypercorn', 'ws',
           'gorilla', 'x-net']
IN_GO = ['gorilla', 'x-net']
# Random, so that a lost, repeated or swapped piece shows
LARGE = random.Random(0).randbytes(2 * 1024 * 1024)
LARGE_TEXT = 'äöü€😀 ' * 300_000


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
def node_path(tmp_path_factory):
    """The directory where ws is installed"""
    if shutil.which('npm') is None:
        pytest.skip('npm is not installed')
    directory = tmp_path_factory.mktemp('node')
    ended = subprocess.run(
        ['npm', 'install', '--no-audit', '--no-fund', '--prefix', directory, 'ws@8'],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False)
    if ended.returncode != 0:
        assert os.environ.get('CI') != 'true', ended.stdout
        pytest.skip(f'npm could not install ws: {ended.stdout[-200:]}')
    return directory / 'node_modules'


@pytest.fixture(scope='module')
def go_path(tmp_path_factory):
    """The program of the servers in Go, built"""
    if os.environ.get('CI') == 'true' and 'LOWHAIO_TEST_GO' not in os.environ:
        pytest.skip('CI need not install Go: it builds the servers with LOWHAIO_TEST_GO=1')
    if shutil.which('go') is None:
        pytest.skip('go is not installed')
    path = tmp_path_factory.mktemp('go') / 'server'
    # As Debian installs libraries of Go, without anything to download
    environment = {**os.environ, 'GO111MODULE': 'off', 'GOPATH': '/usr/share/gocode'}

    def go(*args):
        return subprocess.run(
            ['go', *args], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=300, check=False)

    listed = go('list', 'github.com/gorilla/websocket', 'golang.org/x/net/websocket')
    if listed.returncode != 0:
        pytest.skip(f'Debian\'s libraries of Go are not installed: {listed.stdout[-200:]}')
    built = go('build', '-o', str(path), str(Path(__file__).with_name('websocket_server.go')))
    assert built.returncode == 0, built.stdout
    return path


@pytest.fixture(scope='module', params=[
    (server, scheme) for server in SERVERS for scheme in ('ws', 'wss')], ids='-'.join)
def server(request, certificate_and_key, tmp_path_factory):
    """The name of a server, and where it listens"""
    name, scheme = request.param
    with pytest.MonkeyPatch.context() as patch, socket.socket() as sock:
        if name == 'ws':
            patch.setenv('NODE_PATH', str(request.getfixturevalue('node_path')))
        if name in IN_GO:
            patch.setenv('GO_WEBSOCKET_SERVER', str(request.getfixturevalue('go_path')))
        sock.bind(('127.0.0.1', 0))
        port = sock.getsockname()[1]
        sock.listen(128)
        args = ['websocket_apps', name, str(sock.fileno()),
                *(certificate_and_key if scheme == 'wss' else ())]
        with running(args, sock, tmp_path_factory.mktemp(name)) as (process, get_output):
            sock.close()
            yield name, f'{scheme}://localhost:{port}', process, get_output


@pytest.fixture
def run(server, authority):
    """Runs a function of a `request`, the server's name and its URL"""
    def get_ssl_context():
        context = ssl.create_default_context()
        authority.configure_trust(context)
        return context

    async def answers(request, url, process):
        """Wait until it has started"""
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline and process.poll() is None:
            try:
                async with websocket(request, url + '/echo'):
                    return
            except HttpError:
                await asyncio.sleep(0.02)
        pytest.fail(f'it did not start. It wrote:\n{get_output()}')

    async def bounded(test):
        async with asyncio.timeout(TEST_TIMEOUT + START_TIMEOUT):
            request, close = Pool(get_ssl_context=get_ssl_context)
            await answers(request, url, process)
            await test(request, name, url)
            await close()

    name, url, process, get_output = server

    def run_test(test):
        kind = None if LOOP is None else __import__(LOOP).new_event_loop
        with asyncio.Runner(loop_factory=kind) as runner:
            runner.run(bounded(test))

    return run_test


@pytest.mark.parametrize('compression', [False, True])
def test_messages(run, compression):
    async def test(request, name, url):
        async with websocket(request, url + '/echo', compression=compression,
                             max_message=16 * 1024 * 1024) as ws:
            fields = [value for field, value in ws.headers
                      if field == b'sec-websocket-extensions']
            # It ignores what is offered
            assert bool(fields) == (compression and name != 'x-net')
            for message in ('text', b'binary', '', b'', 'äöü€😀', LARGE, LARGE_TEXT,
                            b'\0' * 200_000):
                await ws.send(message)
                received = await ws.receive()
                assert type(received) is type(message)
                assert received == message
        assert ws.close_code == 1000

    run(test)


@pytest.mark.parametrize('compression', [False, True])
def test_fragments_to_the_server(run, server, compression):
    if server[0] == 'x-net':
        pytest.skip('an application gets each fragment as a message of its own with it')

    async def test(request, name, url):
        async with websocket(request, url + '/echo', compression=compression,
                             max_message=16 * 1024 * 1024) as ws:
            await ws.send(LARGE[i:i + 100_000] for i in range(0, len(LARGE), 100_000))
            assert await ws.receive() == LARGE
            await ws.send('äöü')
            await ws.send(['', 'a', '', 'ö', ''])
            assert [await ws.receive() for _ in range(2)] == ['äöü', 'aö']

    run(test)


@pytest.mark.parametrize('compression', [False, True])
def test_fragments_from_the_server(run, server, compression):
    if server[0] not in ('websockets', 'ws', 'gorilla'):
        pytest.skip('an application can not send fragments with it')

    async def test(request, name, url):
        async with websocket(request, url + '/fragments', compression=compression,
                             max_message=16 * 1024 * 1024) as ws:
            for message in LARGE, LARGE[:3], 'abc' * 1000:
                await ws.send(message)
                assert await ws.receive() == message

    run(test)


def test_many_messages_both_ways(run):
    async def test(request, name, url):
        async def send_all():
            for number in range(2000):
                await ws.send(f'{number}')

        async with websocket(request, url + '/echo') as ws, asyncio.TaskGroup() as group:
            group.create_task(send_all())
            for number in range(2000):
                assert await ws.receive() == f'{number}'

    run(test)


def test_pings(run):
    async def test(request, name, url):
        async with websocket(request, url + '/echo') as ws:
            for _ in range(3):
                assert 0 < await ws.ping() < 10
            # Its own pings, which it sends meanwhile, are answered
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(2.5):
                    await ws.receive()
            await ws.send('still there')
            assert await ws.receive() == 'still there'

    run(test)


def test_the_client_closes(run):
    async def test(request, name, url):
        async with websocket(request, url + '/code') as ws:
            await ws.receive()
            await ws.close(4000, 'enough')
            # These two answer with a code of their own
            code = 1000 if name in ('aiohttp', 'x-net') else 4000
            assert ws.close_code == code
            with pytest.raises(WebSocketClosedError) as caught:
                await ws.receive()
            assert caught.value.code == code
        # The application may get to know it later. That of hypercorn gets to know 1006, and that
        # of x/net nothing
        expected, received = '0' if name in ('hypercorn', 'x-net') else '4000', None
        while received != expected:
            async with websocket(request, url + '/code') as ws:
                received = await ws.receive()
            assert ws.close_code == 1000

    run(test)


def test_the_server_closes(run):
    async def test(request, name, url):
        async with websocket(request, url + '/close') as ws:
            await ws.send('x')
            with pytest.raises(WebSocketClosedError) as caught:
                async for _ in ws:
                    raise AssertionError
            assert (caught.value.code, caught.value.reason) == (4001, 'bye')
            assert (ws.close_code, ws.close_reason) == (4001, 'bye')

    run(test)


def test_a_subprotocol(run):
    async def test(request, name, url):
        async with websocket(request, url + '/echo', ('a', 'b')) as ws:
            assert ws.subprotocol == 'b'

    run(test)


def test_a_refusal(run):
    async def test(request, name, url):
        with pytest.raises(WebSocketHandshakeError) as caught:
            async with websocket(request, url + '/refuse'):
                raise AssertionError
        assert caught.value.code == b'403'

    run(test)


def test_a_message_that_is_too_long(run):
    async def test(request, name, url):
        for compression in False, True:
            async with websocket(
                    request, url + '/echo', compression=compression, max_message=1000) as ws:
                await ws.send(b'\0' * 1001)
                with pytest.raises(WebSocketClosedError) as caught:
                    await ws.receive()
                assert caught.value.code == 1009
        async with websocket(request, url + '/code') as ws:
            await ws.receive()

    run(test)
