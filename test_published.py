"""Tests with what has been published for lowhaio before: its layers and an application run on this
lowhaio unmodified, and each row of the README's table of differences is tried with lowhaio 0.0.89
and with this one.

They are installed from the package index. Without one these tests are skipped, but not in CI.
"""

import contextlib
import importlib.util
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import types

import pytest
import trustme

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE / 'layers'))
pytest.register_assert_rewrite('harness')

from harness import (  # noqa: E402
    OK,
    PATIENCE,
    Answering,
    Server,
    connecting_to,
    get,
    on_loops,
    pool,
    response,
    value,
)

from lowhaio import (  # noqa: E402
    HttpConnectionError,
    HttpDataError,
    buffered,
    streamed,
)

BEFORE = 'lowhaio==0.0.89'
LAYERS = (
    'lowhaio-redirect==0.0.1',
    'lowhaio-retry==0.0.5',
    'lowhaio-chunked==0.0.5',
    'lowhaio-aws-sigv4==0.0.4',
    'lowhaio-aws-sigv4-unsigned-payload==0.0.4',
)
APPLICATION = ('mobius3==0.0.30', 'fifolock==0.0.20')


def install(directory, *requirements):
    """Nothing of what they need: that is here, and lowhaio is the one of this directory."""
    ended = subprocess.run(
        [sys.executable, '-m', 'pip', 'install', '--no-deps', '--no-compile',
         '--disable-pip-version-check', '--target', directory, *requirements],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False)
    if ended.returncode != 0:
        assert os.environ.get('CI') != 'true', ended.stdout
        pytest.skip(f'pip could not install {" ".join(requirements)}: {ended.stdout[-200:]}')
    return directory


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    return install(tmp_path_factory.mktemp('site'), *LAYERS, *APPLICATION)


@pytest.fixture(scope='module')
def before(tmp_path_factory):
    return install(tmp_path_factory.mktemp('before'), BEFORE)


# ------------------------------------------------------------------------------ the layers
#
# Called as their own READMEs say.

@pytest.fixture(scope='module')
def layers(site):
    """Their functions. The modules are not in sys.modules, where those of this project may be."""
    names = types.SimpleNamespace()
    for module in ('redirect', 'retry', 'chunked', 'aws_sigv4', 'aws_sigv4_unsigned_payload'):
        path = site / f'lowhaio_{module}.py'
        spec = importlib.util.spec_from_file_location(f'published_{module}', path)
        setattr(names, module, importlib.util.module_from_spec(spec))
        spec.loader.exec_module(getattr(names, module))
    return names


CONTENT = b'the content'
WITH_CONTENT = {'headers': ((b'content-length', b'11'),), 'body': streamed(CONTENT)}


@pytest.mark.parametrize('code, method, next_method', [
    (301, 'GET', 'GET'),
    (301, 'POST', 'GET'),
    (301, 'PUT', 'PUT'),
    (302, 'POST', 'GET'),
    (302, 'PUT', 'PUT'),
    (303, 'GET', 'GET'),
    (303, 'POST', 'GET'),
    (303, 'PUT', 'GET'),
    (307, 'POST', 'POST'),
    (307, 'PUT', 'PUT'),
    (308, 'POST', 'POST'),
    (308, 'DELETE', 'DELETE'),
])
@on_loops
async def test_redirect(layers, code, method, next_method):
    script = Answering(response(code, b'see there', b'location: /there/%20x?a=b'), OK)
    async with Server(script) as server, pool() as request:
        redirectable = layers.redirect.redirectable(request)
        code, _, body = await redirectable(
            method.encode(), server.url + 'here/first', **WITH_CONTENT)
        assert (code, await buffered(body)) == (b'200', b'ok')
    assert script.lines == [f'{method} /here/first', f'{next_method} /there/%20x?a=b']
    assert script.bodies == [CONTENT, CONTENT if method == next_method else b'']
    assert script.connections == [0, 0]


@on_loops
async def test_redirect_to_a_relative_location(layers):
    script = Answering(response(302, b'', b'location: there'),
                       lambda head, body: response(302, b'', b'location: //%b/b' % value(
                           head, b'host')), OK)
    async with Server(script) as server, pool() as request:
        code, _, content = await get(layers.redirect.redirectable(request), server.url)
        assert (code, content) == (b'200', b'ok')
    assert script.lines == ['GET /', 'GET /there', 'GET /b']


@on_loops
async def test_too_many_redirects(layers):
    script = Answering(response(302, b'again', b'location: /'))
    async with Server(script) as server, pool() as request:
        redirectable = layers.redirect.redirectable(request, max_redirects=3)
        with pytest.raises(layers.redirect.HttpTooManyRedirects):
            await redirectable(b'GET', server.url)
    assert script.connections == [0, 0, 0]


@on_loops
async def test_authorization_is_not_for_another_host(layers):
    script = Answering(response(307, b'', b'location: /b'),
                       response(307, b'', b'location: http://b.example/c'), OK)
    async with (Server(script) as server,
                pool(get_connection=connecting_to(http=server.port)) as request):
        redirectable = layers.redirect.redirectable(request)
        code, _, content = await get(
            redirectable, 'http://a.example/a', headers=((b'authorization', b'secret'),))
    assert (code, content) == (b'200', b'ok')
    assert [(value(head, b'host'), value(head, b'authorization')) for head in script.heads] == [
        (b'a.example', b'secret'), (b'a.example', b'secret'), (b'b.example', None)]


INTERVALS = ((HttpConnectionError, (0, 0)), (HttpDataError, (0, 0)))


@on_loops
async def test_retry_after_a_server_that_fails_twice(layers):
    bodies = []

    async def fail_twice(peer):
        bodies.append(await peer.read_body(await peer.read_head()))
        await peer.send([b'', b'HTTP/1.1 200 OK\r\ncontent-', OK][peer.index])

    async with Server(fail_twice) as server, pool() as request:
        retriable = layers.retry.retry(request, exception_intervals=INTERVALS)
        code, _, body = await retriable(b'PUT', server.url, **WITH_CONTENT)
        assert (code, await buffered(body)) == (b'200', b'ok')
    assert bodies == [CONTENT] * 3


@on_loops
async def test_retry_gives_up(layers):
    script = Answering(None)
    async with Server(script) as server, pool() as request:
        retriable = layers.retry.retry(request, exception_intervals=INTERVALS)
        with pytest.raises(HttpDataError):
            await retriable(b'GET', server.url)
    assert len(script.heads) == 3


@on_loops
async def test_retry_of_what_was_not_sent(layers):
    script = Answering(OK)
    async with Server(script) as server:
        attempts = []
        connect = connecting_to(http=server.port)

        async def get_connection(*origin):
            attempts.append(origin)
            if len(attempts) < 3:
                raise ConnectionRefusedError
            return await connect(*origin)

        async with pool(get_connection=get_connection) as request:
            retriable = layers.retry.retry(request, exception_intervals=INTERVALS)
            code, _, content = await get(retriable, 'http://a.example/')
    assert (code, content) == (b'200', b'ok')
    assert len(attempts) == 3


@on_loops
async def test_chunked(layers):
    async def rows(count):
        for number in range(count):
            yield b'row %d\n' % number * 10 ** (number % 5)

    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        code, _, body = await request(
            b'POST', server.url, headers=((b'transfer-encoding', b'chunked'),),
            body=layers.chunked.chunked(rows), body_args=(20,))
        assert (code, await buffered(body)) == (b'200', b'ok')
    [sent] = script.bodies
    content = b''
    while (size := int(sent[:sent.index(b'\r\n')], 16)) > 0:
        sent = sent.partition(b'\r\n')[2]
        content += sent[:size]
        sent = sent[size + 2:]
    assert sent == b'0\r\n\r\n'
    assert content == b''.join([row async for row in rows(20)])


@on_loops
async def test_stacked(layers):
    script = Answering(None, response(308, b'', b'location: /there'), None, OK)
    async with Server(script) as server, pool() as request:
        stacked = layers.redirect.redirectable(
            layers.retry.retry(request, exception_intervals=INTERVALS))
        code, _, body = await stacked(
            b'PUT', server.url, headers=((b'transfer-encoding', b'chunked'),),
            body=layers.chunked.chunked(streamed(CONTENT)))
        assert (code, await buffered(body)) == (b'200', b'ok')
    assert script.lines == ['PUT /', 'PUT /', 'PUT /there', 'PUT /there']
    assert set(script.bodies) == {b'b\r\nthe content\r\n0\r\n\r\n'}


# Signatures

@contextlib.contextmanager
def started(command, pattern, directory):
    """A server, and what the pattern finds in what it prints."""
    output = directory / 'output'
    with open(output, 'w') as file, subprocess.Popen(
            command, stdout=file, stderr=file, cwd=directory) as process:
        try:
            limit = time.monotonic() + PATIENCE
            while not (match := re.search(pattern, output.read_text())):
                assert process.poll() is None and time.monotonic() < limit, output.read_text()
                time.sleep(0.05)
            yield match[1]
        finally:
            process.kill()


@pytest.fixture(scope='module')
def rclone(tmp_path_factory):
    """The port of a server that verifies signatures."""
    directory = tmp_path_factory.mktemp('rclone')
    (directory / 'root').mkdir()
    program = pathlib.Path(sys.executable).with_name('rclone')
    with started([program, 'serve', 's3', '--addr', '127.0.0.1:0', '--auth-key', 'AKID,secret',
                  'root'], r'Starting s3 server on \[http://.*:(\d+)/\]', directory) as port:
        yield int(port)


async def credentials():
    return 'AKID', 'secret', ()


async def wrong_credentials():
    return 'AKID', 'wrong', ()


# As these layers want them: not percent-encoded.
KEYS = ['key', 'a b', 'a+b', 'é/ሴ', "~!$&'()*,;=:@", '100% "<>^`{|}\\']


def content_length(module, length):
    """One of the layers adds it, the other does not."""
    return () if module == 'aws_sigv4' else ((b'content-length', b'%d' % length),)


async def puts_gets_and_lists(request, module, root):
    code, _, body = await request(b'PUT', root, headers=content_length(module, 0))
    assert code in (b'200', b'409'), await buffered(body)
    for key in KEYS:
        content = key.encode() * 3
        code, _, body = await request(
            b'PUT', f'{root}/{key}', body=streamed(content),
            headers=content_length(module, len(content)))
        assert (code, await buffered(body)) == (b'200', b'')
        code, _, body = await request(b'GET', f'{root}/{key}')
        assert (code, await buffered(body)) == (b'200', content)
        code, _, body = await request(
            b'GET', root, params=(('list-type', '2'), ('prefix', key)))
        listing = await buffered(body)
        assert code == b'200'
        assert listing.count(b'<Contents>') == 1


@pytest.mark.parametrize('module', ['aws_sigv4', 'aws_sigv4_unsigned_payload'])
@on_loops
async def test_signatures_are_accepted_by_a_server_that_verifies_them(layers, rclone, module):
    signed = getattr(layers, module).signed
    async with pool(get_connection=connecting_to(http=rclone)) as request:
        await puts_gets_and_lists(
            signed(request, credentials, 's3', 'us-east-1'), module, 'http://s3.example/bucket')
        code, _, body = await signed(request, wrong_credentials, 's3', 'us-east-1')(
            b'GET', 'http://s3.example/bucket/key')
        assert code == b'403'
        assert b'SignatureDoesNotMatch' in await buffered(body)


# ------------------------------------------------------------------------- the application

# It uses inotify.
on_linux = pytest.mark.skipif(sys.platform != 'linux', reason='mobius3 is for Linux only')

# Its README's example, with a server of S3 that is here and without its long intervals.
SYNC = '''
import asyncio, socket, ssl, sys
from lowhaio import Pool
from mobius3 import Syncer

directory, port, authority = sys.argv[1:]

async def get_connection(scheme, host, port_of_s3):
    assert (scheme, host, port_of_s3) == ('https', 'bucket.s3-eu-west-2.amazonaws.com', 443)
    sock = socket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ('127.0.0.1', int(port)))
    return sock

def get_pool(**options):
    return Pool(get_connection=get_connection, **options,
                get_ssl_context=lambda: ssl.create_default_context(cafile=authority))

async def main():
    start, stop = Syncer(
        directory, 'bucket', 'https://{}.s3-eu-west-2.amazonaws.com/', 'eu-west-2',
        prefix='folder/', get_pool=get_pool, download_interval=0.05,
        local_modification_persistance=0)
    await start()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await stop()

asyncio.run(main())
'''


class Bucket:
    """Of a server that is asked by other means than lowhaio."""

    def __init__(self, url, **options):
        import boto3
        self.client = boto3.client(
            's3', endpoint_url=url, region_name='eu-west-2', aws_access_key_id='AKID',
            aws_secret_access_key='secret', **options)
        self.client.create_bucket(
            Bucket='bucket', CreateBucketConfiguration={'LocationConstraint': 'eu-west-2'})

    def keys(self):
        listed = self.client.list_objects_v2(Bucket='bucket').get('Contents', [])
        return {each['Key'].removeprefix('folder/') for each in listed}

    def __getitem__(self, key):
        return self.client.get_object(Bucket='bucket', Key=f'folder/{key}')['Body'].read()

    def __setitem__(self, key, content):
        self.client.put_object(Bucket='bucket', Key=f'folder/{key}', Body=content)

    def __delitem__(self, key):
        self.client.delete_object(Bucket='bucket', Key=f'folder/{key}')


@contextlib.contextmanager
def moto(directory, *options):
    arguments = ['-p', '0', *map(str, options)]
    with started([sys.executable, '-c', f'from moto.server import main; main({arguments})'],
                 r'Running on (https?://127.0.0.1:\d+)', directory) as url:
        yield url


@contextlib.contextmanager
def running(command, site, directory):
    """Yields the process, and a function that waits for a condition while it runs."""
    environment = {
        **os.environ, 'PYTHONPATH': f'{HERE}{os.pathsep}{site}', 'PYTHONWARNINGS': 'error',
        'AWS_ACCESS_KEY_ID': 'AKID', 'AWS_SECRET_ACCESS_KEY': 'secret'}
    output = directory / 'printed'
    with open(output, 'w') as file, subprocess.Popen(
            [sys.executable, '-P', *map(str, command)], env=environment, cwd=directory,
            stdin=subprocess.PIPE, stdout=file, stderr=file) as process:
        def wait_until(condition):
            limit = time.monotonic() + PATIENCE
            while not condition():
                assert process.poll() is None and time.monotonic() < limit, output.read_text()
                time.sleep(0.02)

        try:
            yield process, wait_until
        finally:
            process.kill()
    # It may tell that an object was gone before it could be got.
    assert not re.search('Http|never|ignored|Warning', output.read_text()), output.read_text()


@on_linux
def test_mobius3_syncs_a_folder_both_ways(site, tmp_path):
    authority = trustme.CA()
    certificate = authority.issue_cert('*.s3-eu-west-2.amazonaws.com', '127.0.0.1')
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / 'server.pem')
    authority.cert_pem.write_to_path(tmp_path / 'authority.pem')
    folder = tmp_path / 'folder'
    folder.mkdir()
    large = os.urandom(3_000_000)
    with moto(tmp_path, '-c', tmp_path / 'server.pem', '-k', tmp_path / 'server.pem') as url:
        bucket = Bucket(url, verify=str(tmp_path / 'authority.pem'))
        bucket['before'] = large
        command = ['-c', SYNC, folder, url.rpartition(':')[2], tmp_path / 'authority.pem']
        with running(command, site, tmp_path) as (process, wait_until):
            wait_until((folder / 'before').exists)
            assert (folder / 'before').read_bytes() == large

            (folder / 'é +&.txt').write_bytes(large)
            wait_until(lambda: 'é +&.txt' in bucket.keys())
            assert bucket['é +&.txt'] == large

            (folder / 'é +&.txt').rename(folder / 'renamed')
            wait_until(lambda: 'renamed' in bucket.keys() and 'é +&.txt' not in bucket.keys())
            assert bucket['renamed'] == large

            (folder / 'a').mkdir()
            (folder / 'a' / 'file').write_bytes(b'in a folder')
            wait_until(lambda: 'a/file' in bucket.keys())
            (folder / 'a').rename(folder / 'b')
            wait_until(lambda: 'b/file' in bucket.keys() and 'a/file' not in bucket.keys())
            assert bucket['b/file'] == b'in a folder'

            (folder / 'renamed').unlink()
            wait_until(lambda: 'renamed' not in bucket.keys())

            bucket['there'] = b'written there'
            wait_until((folder / 'there').exists)
            assert (folder / 'there').read_bytes() == b'written there'
            bucket['there'] = b'changed there'
            wait_until(lambda: (folder / 'there').read_bytes() == b'changed there')
            del bucket['there']
            wait_until(lambda: not (folder / 'there').exists())

            process.stdin.close()
            assert process.wait(PATIENCE) == 0
        assert {key for key in bucket.keys() if not key.endswith('/')} == {'before', 'b/file'}


@on_linux
def test_mobius3_is_a_command(site, tmp_path):
    folder = tmp_path / 'folder'
    folder.mkdir()
    with moto(tmp_path) as url:
        bucket = Bucket(url)
        bucket['there'] = b'written there'
        command = [site / 'bin' / 'mobius3', folder, 'bucket', url + '/{}/', 'eu-west-2',
                   '--prefix', 'folder/']
        with running(command, site, tmp_path) as (process, wait_until):
            wait_until((folder / 'there').exists)
            assert (folder / 'there').read_bytes() == b'written there'
            (folder / 'here').write_bytes(b'written here')
            wait_until(lambda: 'here' in bucket.keys())
            assert bucket['here'] == b'written here'
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
