"""Tests with what has been published for lowhaio before: its layers and an application run on this
lowhaio unmodified, and each row of docs/differences.md is tried with lowhaio 0.0.89 and with this
one.

They are installed from the package index. Without one these tests are skipped, but not in CI.
"""

import asyncio
import collections
import contextlib
import errno
import gc
import importlib.util
import inspect
import ipaddress
import json
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
import time
import types
from collections.abc import Callable
from typing import NamedTuple

import aiodnsresolver
import pytest
import trustme

import lowhaio
from lowhaio import (
    HttpConnectionError,
    HttpDataError,
    HttpLoggerAdapter,
    Pool,
    buffered,
    streamed,
    timeout,
)
from tests.harness import (
    OK,
    PATIENCE,
    SILENCE,
    Answering,
    ScriptedNameserver,
    Server,
    authority,
    certified,
    connecting_to,
    found,
    get,
    nameservers_of,
    on_loops,
    pool,
    python_blocks,
    response,
    trusting,
    turns,
    until,
    value,
)

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]

BEFORE = 'lowhaio==0.0.89'
LAYERS = (
    'lowhaio-redirect==0.0.1',
    'lowhaio-retry==0.0.5',
    'lowhaio-chunked==0.0.5',
    'lowhaio-aws-sigv4==0.0.4',
    'lowhaio-aws-sigv4-unsigned-payload==0.0.4',
)
APPLICATION = ('mobius3==0.0.30', 'fifolock==0.0.20')

# They were written before CPython 3.12.
DEPRECATED = 'ignore::DeprecationWarning'


def install(directory, *requirements):
    """Nothing of what they need: that is here, and lowhaio is the one of this directory."""
    ended = subprocess.run(
        [sys.executable, '-m', 'pip', 'install', '--no-deps', '--no-compile',
         '--disable-pip-version-check', '--target', directory, *requirements],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, check=False)
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
                assert process.poll() is None, output.read_text()
                assert time.monotonic() < limit, output.read_text()
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


async def puts_gets_and_lists(request, module, root, keys=KEYS):
    code, _, body = await request(b'PUT', root, headers=content_length(module, 0))
    assert code in (b'200', b'409'), await buffered(body)
    for key in keys:
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


@pytest.mark.filterwarnings(DEPRECATED)
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


# The layer of docs/differences.md that sends what lowhaio 0.0.89 did.
DIFFERENCES_PAGE = ROOT / 'docs' / 'differences.md'
[AS_BEFORE] = [block.partition('async def main')[0] for block in python_blocks(DIFFERENCES_PAGE)]


def as_before(request):
    names = {}
    exec(compile(AS_BEFORE, 'differences.md', 'exec'), names)
    return names['as_before'](request)


@pytest.mark.filterwarnings(DEPRECATED)
@pytest.mark.parametrize('module', ['aws_sigv4', 'aws_sigv4_unsigned_payload'])
@on_loops
async def test_signatures_for_another_port_and_with_percent_signs(layers, rclone, module):
    signed = getattr(layers, module).signed
    keys = [*KEYS, 'a%2Fb%20']
    async with pool() as request:
        root = f'http://127.0.0.1:{rclone}/bucket'
        await puts_gets_and_lists(
            signed(as_before(request), credentials, 's3', 'us-east-1'), module, root, keys)
        code, _, _ = await get(signed(request, credentials, 's3', 'us-east-1'), f'{root}/key')
        assert code == b'403'


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
    request, close = Pool(
        get_connection=get_connection, **options,
        get_ssl_context=lambda: ssl.create_default_context(cafile=authority))
    return layer(request), close

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
        import boto3  # slow, and not needed by the rows below
        self.client = boto3.client(
            's3', endpoint_url=url, region_name='eu-west-2', aws_access_key_id='AKID',
            aws_secret_access_key='secret', **options)
        self.client.create_bucket(
            Bucket='bucket', CreateBucketConfiguration={'LocationConstraint': 'eu-west-2'})

    def keys(self):
        listed = self.client.list_objects_v2(Bucket='bucket').get('Contents', [])
        return {each['Key'].removeprefix('folder/') for each in listed}

    def __contains__(self, key):
        return key in self.keys()

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
        **os.environ, 'PYTHONPATH': f'{ROOT}{os.pathsep}{site}',
        'PYTHONWARNINGS': f'error,{DEPRECATED}',
        'AWS_ACCESS_KEY_ID': 'AKID', 'AWS_SECRET_ACCESS_KEY': 'secret'}
    output = directory / 'printed'
    with open(output, 'w') as file, subprocess.Popen(
            [sys.executable, '-P', *map(str, command)], env=environment, cwd=directory,
            stdin=subprocess.PIPE, stdout=file, stderr=file) as process:
        def wait_until(condition):
            limit = time.monotonic() + PATIENCE
            while not condition():
                assert process.poll() is None, output.read_text()
                assert time.monotonic() < limit, output.read_text()
                time.sleep(0.02)

        try:
            yield process, wait_until
        finally:
            process.kill()
    # It may tell that an object was gone before it could be got.
    assert not re.search('Http|never|ignored|Warning', output.read_text()), output.read_text()


@on_linux
@pytest.mark.parametrize('layer, name', [
    ('layer = lambda request: request', 'é +&.txt'),
    (AS_BEFORE + 'layer = as_before', 'é +&%20.txt'),
], ids=['as-it-is', 'as-before'])
def test_mobius3_syncs_a_folder_both_ways(site, tmp_path, layer, name):
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
        command = ['-c', layer + SYNC, folder, url.rpartition(':')[2], tmp_path / 'authority.pem']
        with running(command, site, tmp_path) as (process, wait_until):
            wait_until((folder / 'before').exists)
            assert (folder / 'before').read_bytes() == large

            (folder / name).write_bytes(large)
            wait_until(lambda: name in bucket)
            assert bucket[name] == large

            (folder / name).rename(folder / 'renamed')
            wait_until(lambda: 'renamed' in bucket and name not in bucket)
            assert bucket['renamed'] == large

            (folder / 'a').mkdir()
            (folder / 'a' / 'file').write_bytes(b'in a folder')
            wait_until(lambda: 'a/file' in bucket)
            (folder / 'a').rename(folder / 'b')
            wait_until(lambda: 'b/file' in bucket and 'a/file' not in bucket)
            assert bucket['b/file'] == b'in a folder'

            (folder / 'renamed').unlink()
            wait_until(lambda: 'renamed' not in bucket)

            bucket['there'] = b'written there'
            wait_until((folder / 'there').exists)
            assert (folder / 'there').read_bytes() == b'written there'
            bucket['there'] = b'changed there'
            wait_until(lambda: (folder / 'there').read_bytes() == b'changed there')
            del bucket['there']
            wait_until(lambda: not (folder / 'there').exists())

            process.stdin.close()
            assert process.wait(PATIENCE) == 0
        assert bucket.keys() - {'b/'} == {'before', 'b/file'}


@on_linux
@pytest.mark.skipif(sys.version_info >= (3, 14), reason='it asks for a loop that is not made')
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
            wait_until(lambda: 'here' in bucket)
            assert bucket['here'] == b'written here'
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0


# --------------------------------------------------------------------------- the differences
#
# Each row of docs/differences.md has a function here. It is run twice, in a process with lowhaio
# 0.0.89 and in one with this lowhaio, and returns what could be seen. That it sees something else
# with the other is asserted: what is the same is no difference.

class Difference(NamedTuple):
    see: Callable
    before: object
    now: object


DIFFERENCES: dict[str, Difference] = {}


def difference(behaviour, before, now):
    def remember(see):
        DIFFERENCES[behaviour] = Difference(see, before, now)
        return see

    return remember


def print_what_is_seen():
    """The process's program. Each line is of one row."""
    for behaviour, row in DIFFERENCES.items():
        with asyncio.Runner(loop_factory=LoopWithClock) as runner:
            # The servers of 0.0.89's clients see connections reset, and may tell.
            runner.get_loop().set_exception_handler(lambda loop, context: None)
            print(json.dumps([behaviour, repr(runner.run(seen(row.see)))]))
    print(json.dumps(['targets', repr(asyncio.run(targets_and_hosts()))]))


async def seen(see):
    # 0.0.89 leaves cancellations behind: those of a row are not for what runs it.
    return await asyncio.create_task(see())


class LoopWithClock(asyncio.SelectorEventLoop):
    """So that time passes when a row says so."""

    ahead = 0

    def time(self):
        return super().time() + self.ahead


async def pass_time(seconds):
    await turns(10)
    asyncio.get_running_loop().ahead += seconds
    await turns(10)


def what_is_seen(directory, path):
    ended = subprocess.run(
        [sys.executable, '-P', '-c', 'import test_published as t; t.print_what_is_seen()'],
        cwd=directory, env={**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, path))},
        capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr
    return dict(map(json.loads, ended.stdout.splitlines()))


@pytest.fixture(scope='module')
def seen_before(before, tmp_path_factory):
    return what_is_seen(tmp_path_factory.mktemp('seen_before'), [before, HERE, ROOT])


@pytest.fixture(scope='module')
def seen_now(tmp_path_factory):
    return what_is_seen(tmp_path_factory.mktemp('seen_now'), [HERE, ROOT])


def rows_of_the_page():
    rows = re.findall(
        r'^\| (.*?) \|.*\|.*\|.*\|$', DIFFERENCES_PAGE.read_text(), re.MULTILINE)
    return [row for row in rows if row not in ('behaviour', '---')]


def test_each_difference_of_the_page_is_tried():
    assert rows_of_the_page() == list(DIFFERENCES)


@pytest.mark.parametrize('behaviour', DIFFERENCES)
def test_difference(behaviour, seen_before, seen_now):
    _, before, now = DIFFERENCES[behaviour]
    assert seen_before[behaviour] == repr(before)
    assert seen_now[behaviour] == repr(now)
    assert before != now


def test_what_applications_import_is_there(before, tmp_path):
    """With the same parameters in the same places, but for those of Pool, which has a row. What is
    new comes after them."""
    code = '''
import asyncio, inspect, json, lowhaio
from lowhaio import HttpError

async def main():
    request, close = lowhaio.Pool()
    functions = {
        name: list(inspect.signature(function).parameters)[:9] for name, function in (
            ('request', request), ('close', close), ('streamed', lowhaio.streamed))}
    classes = {
        name: [base.__name__ for base in thing.__mro__] for name, thing in vars(lowhaio).items()
        if isinstance(thing, type) and issubclass(thing, HttpError)}
    print(json.dumps([functions, classes]))

asyncio.run(main())
'''
    printed = [subprocess.run(
        [sys.executable, '-P', '-c', code], env={**os.environ, 'PYTHONPATH': str(path)},
        cwd=tmp_path, stdout=subprocess.PIPE, check=True).stdout for path in (before, ROOT)]
    assert printed[0] == printed[1]
    for name in ('buffered', 'empty_async_iterator', 'timeout', 'HttpLoggerAdapter'):
        assert hasattr(lowhaio, name)


URLS = ('/', '/a b', '/a%20b', '/é/+?dropped', "/~!$&'()*,;=:@", '/..//a/./b#fragment')


async def targets_and_hosts(change=lambda request: request):
    script = Answering(OK)
    async with Server(script) as server:
        request, close = Pool()
        request = change(request)
        for target in URLS:
            await outcome(request(b'GET', f'http://LocalHost:{server.port}{target}',
                                  params=(('a', 'b c'),), headers=((b'a', b'b'),)))
        await close()
        return [(head.split(b' ')[1], value(head, b'host'), value(head, b'a'))
                for head in script.heads]


def test_the_layer_of_the_readme_sends_what_was_sent_before(seen_before):
    now = asyncio.run(targets_and_hosts(as_before))
    assert len(now) == len(URLS)
    assert repr(now) == seen_before['targets']


# What the rows look at

IS_NOW = 'get_connection' in inspect.signature(Pool).parameters


async def outcome(awaitable):
    """The code and the content of a response, or what was raised, and from what."""
    try:
        code, _, body = await awaitable
        return code, await buffered(body)
    except Exception as error:
        return raised(error)


def raised(error):
    return type(error).__name__, type(error.__cause__).__name__ if error.__cause__ else None


async def sent(target='/', **arguments):
    """The head that the server was sent, or what was raised."""
    script = Answering(OK)
    async with Server(script) as server:
        request, close = Pool()
        result = await outcome(request(b'GET', server.origin + target, **arguments))
        await close()
        return script.heads[0].replace(b'%d' % server.port, b'PORT') if script.heads else result


async def target_of(target, **arguments):
    head = await sent(target, **arguments)
    return head.split(b' ')[1].decode() if isinstance(head, bytes) else head


async def answered(*pieces, headers=()):
    """What a response is taken for. The server closes the connection after it."""
    async def script(peer):
        await peer.read_head()
        await peer.send(*pieces)

    async with Server(script) as server:
        request, close = Pool()
        result = await outcome(request(b'GET', server.url, headers=headers))
        await close()
        return result


async def uploaded(headers, *chunks):
    """What the server was sent after the head, and the outcome."""
    received = []

    async def script(peer):
        await peer.read_head()
        while data := await peer.reader.read(1000):
            received.append(data)
            await peer.send(OK)

    async def body():
        for chunk in chunks:
            yield chunk

    async with Server(script) as server:
        request, close = Pool()
        result = await outcome(request(b'PUT', server.url, headers=headers, body=body))
        await close()
        await turns(20)
        await until(lambda: all(task.done() for task in server.tasks))
        return b''.join(received), result


async def connections_of(answer, headers=(), between=lambda server: None):
    """Which connection each of two requests used, by number, and what came to the second."""
    script = Answering(answer)
    async with Server(script) as server:
        request, close = Pool()
        for _ in range(2):
            result = await outcome(request(b'GET', server.url, headers=headers))
            await turns(5)
            between(server)
            await turns(5)
        await close()
        return script.connections, result


def resolver_of(asked, **addresses):
    """Of addresses by type of record. It keeps what it was asked for."""
    def get_dns_resolver(get_logger_adapter=None):
        async def resolve(host, record_type, get_logger_adapter=None):
            asked.append(record_type.name)
            if record_type.name not in addresses:
                raise aiodnsresolver.DnsRecordDoesNotExist
            return addresses[record_type.name]

        async def clear_cache(get_logger_adapter=None):
            pass

        return resolve, clear_cache

    return get_dns_resolver


class Machine:
    """A server, and a nameserver with the files that lead to it, in place of those in /etc."""

    def __init__(self, *nameservers, hosts='', options=''):
        self.nameserver = ScriptedNameserver(*nameservers)
        self.answers = self.nameserver.answers
        self.server = Server(Answering(OK))
        self.hosts = hosts
        self.options = options
        self.changes = 0

    async def __aenter__(self):
        async with contextlib.AsyncExitStack() as stack:
            self.directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
            for thing in self.nameserver, self.server:
                await stack.enter_async_context(thing)
            self.stack = stack.pop_all()
        self.write(self.hosts, nameservers_of(self.nameserver) + self.options)
        return self

    async def __aexit__(self, *error):
        await self.stack.__aexit__(*error)

    def write(self, hosts, resolv_conf):
        self.changes += 1
        for name, text in ('hosts', hosts), ('resolv.conf', resolv_conf):
            path = self.directory / name
            path.write_text(text)
            os.utime(path, (0, self.changes))

    def get_dns_resolver(self, **kwargs):
        hosts, resolv_conf = self.directory / 'hosts', self.directory / 'resolv.conf'
        port = self.nameserver.port
        if IS_NOW:
            return lowhaio.get_dns_resolver_default(
                hosts=str(hosts), resolv_conf=str(resolv_conf), port=port, **kwargs)

        # That of 0.0.89 opens the files of /etc, and asks port 53.
        def open_here(path, mode):
            return open(self.directory / pathlib.Path(path).name, mode)

        async def get_nameservers(nameservers, fqdn):
            async for seconds, (address, _) in aiodnsresolver.get_nameservers_default(
                    nameservers, fqdn):
                yield seconds, (address, port)

        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(aiodnsresolver, 'open', open_here, raising=False)
            return aiodnsresolver.Resolver(get_nameservers=get_nameservers, **kwargs)

    @contextlib.asynccontextmanager
    async def pool(self):
        request, close = Pool(get_dns_resolver=self.get_dns_resolver)
        yield request
        await close()

    async def outcome(self, request, host='name.test'):
        return await outcome(request(b'GET', f'http://{host}:{self.server.port}/'))

    async def outcome_in_time(self, request, host='name.test'):
        """The same, while time passes for as long as it takes."""
        task = asyncio.create_task(self.outcome(request, host))
        while not task.done():
            await pass_time(0.1)
        return task.result()

    def count(self, **wanted):
        """How many of the queries were such."""
        return len(self.nameserver.matching(**wanted))


async def is_over_in_time(script, url, **options):
    """If a request ends, and how, once `socket_timeout` has passed many times."""
    async with Server(script) as server:
        request, close = Pool(socket_timeout=1, get_ssl_context=trusting, **options)
        task = asyncio.create_task(outcome(request(b'GET', url.format(port=server.port))))
        await pass_time(0)
        for _ in range(20):
            await pass_time(0.6)
        result = task.result() if task.done() else 'waits'
        task.cancel()
        await asyncio.wait([task])
        await close()
        return result


async def hang(peer):
    await peer.closed()


# The request

REFUSED = ('HttpConnectionError', 'ValueError')
REFUSED_TYPE = ('HttpConnectionError', 'TypeError')


@difference('the query of `url`', '/', '/?a=b%20c&d=e')
async def see_query():
    return await target_of('/?a=b%20c&d=e')


@difference('`params` and a query in `url`', '/?c=d', '/?a=b&c=d')
async def see_params():
    return await target_of('/?a=b', params=(('c', 'd'),))


@difference('the path of `url`', "/a%2520b%2Bc%24/%C3%A9%20%25", "/a%20b+c$/%C3%A9%20%25")
async def see_path():
    return await target_of('/a%20b+c$/é %')


@difference('an empty path', '', '/')
async def see_empty_path():
    return await target_of('')


@difference('the port in `host`',
            b'GET / HTTP/1.1\r\nhost:127.0.0.1\r\na:b\r\n\r\n',
            b'GET / HTTP/1.1\r\nhost: 127.0.0.1:PORT\r\na: b\r\n\r\n')
async def see_host():
    return await sent(headers=((b'a', b'b'),))


@difference('`host` among `headers`', 2, 1)
async def see_own_host():
    return (await sent(headers=((b'Host', b'a.example'),))).lower().count(b'host:')


@difference('IPv6 literals', ('HttpConnectionError', 'gaierror'), (b'200', b'ok'))
async def see_ipv6_literal():
    async with ServerOfIPv6() as port:
        request, close = Pool()
        result = await outcome(request(b'GET', f'http://[::1]:{port}/'))
        await close()
        return result


class ServerOfIPv6:
    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, '::1', 0)
        return self.server.sockets[0].getsockname()[1]

    async def __aexit__(self, *exception):
        self.server.close()

    async def serve(self, reader, writer):
        await reader.readuntil(b'\r\n\r\n')
        writer.write(OK)
        writer.close()


@difference('schemes', (b'200', b'ok'), REFUSED)
async def see_scheme():
    async with Server(Answering(OK)) as server:
        request, close = Pool()
        result = await outcome(request(b'GET', f'ftp://127.0.0.1:{server.port}/'))
        await close()
        return result


@difference('control characters in `url`', '/ab', REFUSED)
async def see_control_character():
    return await target_of('/a\nb')


@difference('pairs of bytes as `params`', '/?a=b', REFUSED_TYPE)
async def see_params_of_bytes():
    return await target_of('/', params=((b'a', b'b'),))


@difference('bad fields', [2, 1], [REFUSED, REFUSED])
async def see_bad_fields():
    heads = [await sent(headers=headers) for headers in (
        ((b'a', b'1\r\nb: 2'),), ((b'bad name', b'1'),))]
    return [head if isinstance(head, tuple) else head.count(b'\r\n') - 3 for head in heads]


@difference('the method `CONNECT`', (b'200', b'ok'), REFUSED)
async def see_connect():
    async with Server(Answering(OK)) as server:
        request, close = Pool()
        result = await outcome(request(b'CONNECT', server.url))
        await close()
        return result


@difference('arguments of a wrong type',
            [('AttributeError', None)] * 3 + [('HttpDataError', 'TypeError')] * 2,
            [REFUSED_TYPE, REFUSED_TYPE, REFUSED, REFUSED_TYPE, REFUSED_TYPE])
async def see_wrong_types():
    async with Server(Answering(OK)) as server:
        request, close = Pool()
        url = server.url
        results = [await outcome(awaitable) for awaitable in (
            request('GET', url), request(b'GET', url.encode()), request(b'GET', 'www.example.com'),
            request(b'GET', url, headers=(('a', 'b'),)), request(b'PUT', url, body=b'abc'))]
        await close()
        return results


@difference('a body without a length', (b'abc', (b'200', b'ok')), (b'', REFUSED))
async def see_no_length():
    return await uploaded((), b'abc')


@difference('a body longer than its length', (b'abc', (b'200', b'ok')), (b'', REFUSED))
async def see_long_body():
    return await uploaded(((b'content-length', b'2'),), b'abc')


@difference('a body shorter than its length',
            (b'abc', (b'200', b'ok')), (b'abc', ('HttpDataError', 'ValueError')))
async def see_short_body():
    return await uploaded(((b'content-length', b'5'),), b'abc')


@difference('two lengths', (b'abc', (b'200', b'ok')), (b'', REFUSED))
async def see_two_lengths():
    return await uploaded(((b'content-length', b'3'),) * 2, b'abc')


@difference('an empty chunk of a body',
            (b'', ('HttpConnectionClosedError', None)), (b'abc', (b'200', b'ok')))
async def see_empty_chunk():
    return await uploaded(((b'content-length', b'3'),), b'', b'abc')


@difference('`expect: 100-continue`', ['head', 'body'], ['head', 'nothing', 'body'])
async def see_expect():
    order = []

    async def script(peer):
        await peer.read_head()
        order.append('head')
        body = asyncio.ensure_future(peer.read(3))
        await turns(20)
        if not body.done():
            order.append('nothing')
            await peer.send(b'HTTP/1.1 100 Continue\r\n\r\n')
        await body
        order.append('body')
        await peer.send(OK)

    async with Server(script) as server:
        request, close = Pool()
        await outcome(request(
            b'PUT', server.url, body=streamed(b'abc'),
            headers=((b'content-length', b'3'), (b'expect', b'100-continue'))))
        await close()
        return order


@difference('a response of 300 or above before the end of the request',
            [1000, b'413'], ['fewer', b'413'])
async def see_early_response():
    asked = []

    async def script(peer):
        await peer.read_head()
        await peer.send(response(413))
        await peer.closed()

    async def body():
        for number in range(1000):
            asked.append(number)
            yield b'x'
            await asyncio.sleep(0)

    async with Server(script) as server:
        request, close = Pool()
        code, _ = await outcome(request(
            b'PUT', server.url, headers=((b'content-length', b'1000'),), body=body))
        await close()
        return [len(asked) if len(asked) == 1000 else 'fewer', code]


@difference('a response below 300 before the end of the request',
            [1000, (b'200', b'ok'), 1000], ['fewer', (b'200', b'ok'), 1000])
async def see_response_to_a_part():
    asked = []

    async def script(peer):
        await peer.read_head()
        await peer.send(OK)
        await peer.read(1000)
        await peer.closed()

    async def body():
        for number in range(1000):
            asked.append(number)
            yield b'x'
            await asyncio.sleep(0)

    async with Server(script) as server:
        request, close = Pool()
        code, _, response_body = await request(
            b'PUT', server.url, headers=((b'content-length', b'1000'),), body=body)
        asked_first = len(asked)
        content = await buffered(response_body)
        await close()
        return [asked_first if asked_first == 1000 else 'fewer', (code, content), len(asked)]


@difference('a response, and sending fails', 'HttpDataError', b'400')
async def see_response_and_reset():
    gone = asyncio.Event()

    async def script(peer):
        await peer.read_head()
        await peer.send(response(400, b'bad'))
        peer.writer.close()
        await peer.writer.wait_closed()
        gone.set()

    async def body():
        yield b'x'
        await gone.wait()
        while True:
            yield b'x' * 65536
            await asyncio.sleep(0)

    async with Server(script) as server:
        request, close = Pool()
        result = await outcome(request(
            b'PUT', server.url, headers=((b'content-length', b'%d' % 2 ** 40),), body=body))
        await close()
        return result[0]


# The response

@difference('interim (1xx) responses', (b'103', b''), (b'200', b'ok'))
async def see_interim():
    return await answered(b'HTTP/1.1 103 Early Hints\r\n\r\n', OK)


@difference('after `101`', (b'101', b''), (b'101', b'abc'))
async def see_upgrade():
    return await answered(
        b'HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\nabc',
        headers=((b'upgrade', b'x'), (b'connection', b'upgrade')))


@difference('204 and 304 with a length',
            [('HttpConnectionClosedError', None)] * 2, [(b'204', b''), (b'304', b'')])
async def see_no_content():
    return [await answered(b'HTTP/1.1 %d Reason\r\ncontent-length: 3\r\n\r\n' % code)
            for code in (204, 304)]


@difference('no length and no `connection: close`', (b'200', b''), (b'200', b'abc'))
async def see_no_length_of_response():
    return await answered(b'HTTP/1.1 200 OK\r\n\r\nabc')


@difference('bare LF as the end of a line', ('HttpConnectionClosedError', None), (b'200', b'ok'))
async def see_bare_lf():
    return await answered(OK.replace(b'\r', b''))


@difference('folded fields', ((b'a', b'b'), (b'c', b'')), ((b'a', b'b c'),))
async def see_folded():
    answer = OK.replace(b'OK', b'OK\r\na: b\r\n c')
    async with Server(Answering(answer)) as server:
        request, close = Pool()
        _, headers, body = await request(b'GET', server.url)
        await buffered(body)
        await close()
        return headers[:-1]


CHUNKED = b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n'


@difference('chunk extensions', ('ValueError', None), (b'200', b'ok'))
async def see_extensions():
    return await answered(CHUNKED + b'2;a=b\r\nok\r\n0\r\n\r\n')


@difference('trailers', None, ((b'a', b'b'),))
async def see_trailers():
    answer = CHUNKED + b'2\r\nok\r\n0\r\na: b\r\n\r\n'
    async with Server(Answering(answer)) as server:
        request, close = Pool()
        _, _, body = await request(b'GET', server.url)
        await buffered(body)
        await close()
        return getattr(body, 'trailers', None)


MALFORMED = {
    'status line': b'hello\r\n\r\n',
    'version': OK.replace(b'1.1', b'2.0'),
    'no colon': OK.replace(b'OK', b'OK\r\nabc'),
    'space before colon': OK.replace(b'OK', b'OK\r\na : b'),
    'sign of length': OK.replace(b': 2', b': +2'),
    'list of lengths': OK.replace(b': 2', b': 2, 2'),
    'negative length': OK.replace(b': 2', b': -2'),
    'transfer coding': CHUNKED.replace(b': ', b': gzip, ') + b'2\r\nok\r\n0\r\n\r\n',
    'sign of chunk size': CHUNKED + b'+2\r\nok\r\n0\r\n\r\n',
}


@difference('malformed responses', {
    'status line': (b'', b''),
    'version': (b'200', b'ok'),
    'no colon': (b'200', b'ok'),
    'space before colon': (b'200', b'ok'),
    'sign of length': (b'200', b'ok'),
    'list of lengths': ('HttpDataError', 'ValueError'),
    'negative length': ('ValueError', None),
    'transfer coding': (b'200', b'ok'),
    'sign of chunk size': (b'200', b'ok'),
}, dict.fromkeys(MALFORMED, ('HttpDataError', 'ValueError')))
async def see_malformed():
    return {name: await answered(answer) for name, answer in MALFORMED.items()}


@difference('bytes after the end of a response',
            ([0, 1], ('ValueError', None)), ([0, 1], (b'200', b'ok')))
async def see_surplus():
    return await connections_of(OK + b'HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged')


@difference('bytes on an idle connection',
            ([0, 0], (b'200', b'forged')), ([0, 1], (b'200', b'ok')))
async def see_unasked():
    def forge(server):
        for peer in server.peers:
            peer.writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged')

    return await connections_of(OK, between=forge)


@difference('the end of a TLS connection without close_notify',
            (b'200', b'abc'), ('HttpConnectionClosedError', 'SSLEOFError'))
async def see_cut_off():
    async def script(peer):
        await peer.read_head()
        await peer.send(b'HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc')
        await turns(20)
        peer.writer.transport.abort()

    async with Server(script, certified('127.0.0.1')) as server:
        request, close = Pool(get_ssl_context=trusting)
        result = await outcome(request(b'GET', server.url))
        await close()
        return result


@difference('the longest chunk of a body', 16384, 122880)
async def see_chunks():
    return inspect.signature(Pool).parameters['recv_bufsize'].default


@difference('the type of a body', 'async_generator', 'ReceivedBody')
async def see_type_of_body():
    async with Server(Answering(OK)) as server:
        request, close = Pool()
        _, _, body = await request(b'GET', server.url)
        await buffered(body)
        await close()
        return type(body).__name__


@difference('a body that is dropped', (True, 'closed by a task'), (True, 'closed'))
async def see_dropped_body():
    loop = asyncio.get_running_loop()
    coroutines = []

    def make_task(loop, coroutine, **arguments):
        coroutines.append(coroutine)
        return asyncio.Task(coroutine, loop=loop, **arguments)

    async def script(peer):
        await peer.read_head()
        await peer.send(b'HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc')
        await peer.closed()
        closed.append(peer)

    closed = []
    async with Server(script) as server:
        request, close = Pool()
        _, _, body = await request(b'GET', server.url)
        await anext(body)
        loop.set_task_factory(make_task)
        del body
        gc.collect()
        await until(lambda: closed)
        loop.set_task_factory(None)
        await close()
        return True, 'closed by a task' if coroutines else 'closed'


# Connections

@difference('which idle connection is used', 'the first', 'the last')
async def see_order():
    script = Answering(OK)
    async with Server(script) as server:
        request, close = Pool()
        responses = await asyncio.gather(*[request(b'GET', server.url) for _ in range(3)])
        for _, _, body in responses:
            await buffered(body)
        idle = script.connections[:]
        await outcome(request(b'GET', server.url))
        await close()
        return {idle[0]: 'the first', idle[2]: 'the last'}[script.connections[3]]


@difference('when a connection is idle', [0, 1], [0, 0])
async def see_release():
    script = Answering(OK)
    async with Server(script) as server:
        request, close = Pool()
        bodies = [(await request(b'GET', server.url))[2] for _ in range(2)]
        for body in bodies:
            await buffered(body)
        await close()
        return script.connections


@difference('an idle connection that the server closed',
            ([0], ('HttpConnectionClosedError', None)), ([0, 1], (b'200', b'ok')))
async def see_hang_up():
    def hang_up(server):
        for peer in server.peers:
            peer.writer.close()

    return await connections_of(OK, between=hang_up)


@difference('`keep-alive: timeout=N` of a response', [0, 0], [0, 1])
async def see_keep_alive():
    answer = OK.replace(b'OK', b'OK\r\nkeep-alive: timeout=1')
    return (await connections_of(answer))[0]


@difference('`connection: close` of a request', [0, 0], [0, 1])
async def see_own_close():
    return (await connections_of(OK, headers=((b'connection', b'close'),)))[0]


@difference('several addresses',
            ('HttpConnectionError', 'ConnectionRefusedError'), (b'200', b'ok'))
async def see_second_address():
    addresses = [ipaddress.ip_address(address) for address in ('127.0.0.2', '127.0.0.1')]
    async with Server(Answering(OK)) as server:
        request, close = Pool(get_dns_resolver=resolver_of([], A=addresses))
        result = await outcome(request(b'GET', f'http://a.example:{server.port}/'))
        await close()
        return result


@difference('TLS sessions', [False, False], [False, True])
async def see_tls_sessions():
    context = certified('127.0.0.1')
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    resumed = []

    async def script(peer):
        resumed.append(peer.writer.get_extra_info('ssl_object').session_reused)
        await peer.read_head()
        await peer.send(OK)
        await peer.closed()

    async with Server(script, context) as server:
        request, close = Pool(get_ssl_context=trusting, keep_alive_timeout=0)
        for _ in range(2):
            await outcome(request(b'GET', server.url))
        await close()
        return resumed


@difference('ALPN', None, 'http/1.1')
async def see_alpn():
    context = certified('127.0.0.1')
    context.set_alpn_protocols(['h2', 'http/1.1'])
    protocols = []

    async def script(peer):
        protocols.append(peer.writer.get_extra_info('ssl_object').selected_alpn_protocol())

    def get_ssl_context():
        context = inspect.signature(Pool).parameters['get_ssl_context'].default()
        authority().configure_trust(context)
        return context

    async with Server(script, context) as server:
        request, close = Pool(get_ssl_context=get_ssl_context)
        await outcome(request(b'GET', server.url))
        await close()
        return protocols[0]


@difference('keep-alive probes of TCP', 0, 1)
async def see_probes():
    get_sock = inspect.signature(Pool).parameters['get_sock'].default
    with get_sock(socket.AF_INET) if IS_NOW else get_sock() as sock:
        return int(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) != 0)


# Names

@difference('AAAA records', ('HttpDnsError', 'DnsRecordDoesNotExist'), (b'200', b'ok'))
async def see_aaaa():
    async with ServerOfIPv6() as port:
        resolver = resolver_of([], AAAA=[ipaddress.ip_address('::1')])
        request, close = Pool(get_dns_resolver=resolver)
        result = await outcome(request(b'GET', f'http://a.example:{port}/'))
        await close()
        return result


@difference('how often the resolver is asked', ['A', 'A', 'A'], ['A'])
async def see_lookups():
    asked = []
    address = aiodnsresolver.IPv4AddressExpiresAt(
        '127.0.0.1', expires_at=asyncio.get_running_loop().time() + 1000)
    async with Server(Answering(OK)) as server:
        request, close = Pool(get_dns_resolver=resolver_of(asked, A=[address]))
        for _ in range(3):
            await outcome(request(b'GET', f'http://a.example:{server.port}/'))
        await close()
        return asked


@difference('a name that does not exist', 3, 1)
async def see_missing():
    async with Machine() as machine, machine.pool() as request:
        for _ in range(3):
            await machine.outcome(request)
        return machine.count(kind='A')


@difference('addresses past their time, when no nameserver answers',
            ('HttpDnsError', 'DnsTimeout'), (b'200', b'ok'))
async def see_stale():
    async with Machine() as machine, machine.pool() as request:
        machine.answers['name.test'] = found('127.0.0.1', ttl=5)
        await machine.outcome(request)
        machine.answers['name.test'] = SILENCE
        await pass_time(6)
        return await machine.outcome_in_time(request)


@difference('an idle connection to one of several addresses, which the next answer does not have',
            ('HttpConnectionError', 'ConnectionRefusedError'), (b'200', b'ok'))
async def see_grace():
    # Only at the first address is a server.
    async with Machine() as machine, machine.pool() as request:
        machine.answers['name.test'] = found('127.0.0.1', '127.0.0.2', ttl=5)
        assert await machine.outcome(request) == (b'200', b'ok')
        machine.answers['name.test'] = found('127.0.0.3', '127.0.0.4', ttl=5)
        await pass_time(6)
        return await machine.outcome(request)


@difference('names in `/etc/hosts`',
            [('HttpDnsError', 'DnsRecordDoesNotExist'),
             ('HttpConnectionError', 'ConnectionRefusedError')],
            [(b'200', b'ok')] * 2)
async def see_hosts():
    hosts = '127.0.0.1 MyHost\n127.0.0.1 name.test\n127.0.0.2 name.test\n'
    async with Machine(hosts=hosts) as machine, machine.pool() as request:
        return [await machine.outcome(request, host) for host in ('myhost', 'name.test')]


@difference('`localhost`, if `/etc/hosts` does not have it',
            (('HttpDnsError', 'DnsRecordDoesNotExist'), 1), ((b'200', b'ok'), 0))
async def see_localhost():
    async with Machine() as machine, machine.pool() as request:
        return await machine.outcome(request, 'localhost'), machine.count(name='localhost')


@difference('a change of `/etc/hosts` or `/etc/resolv.conf`',
            [('HttpDnsError', 'DnsRecordDoesNotExist'), 0], [(b'200', b'ok'), 1])
async def see_changed_files():
    async with Machine('127.0.0.1', '127.0.0.2') as machine, machine.pool() as request:
        await machine.outcome(request)
        machine.write('127.0.0.1 myhost\n', 'nameserver 127.0.0.2\n')
        await pass_time(6)
        by_hosts = await machine.outcome(request, 'myhost')
        await machine.outcome(request, 'other.test')
        return [by_hosts, machine.count(name='other.test', kind='A', at='127.0.0.2')]


@difference('`search`, `domain` and `ndots` in `/etc/resolv.conf`',
            (('HttpDnsError', 'DnsRecordDoesNotExist'), ['api']),
            ((b'200', b'ok'), ['api.b.test']))
async def see_search():
    async with Machine(options='search b.test\n') as machine, machine.pool() as request:
        machine.answers['api.b.test'] = found('127.0.0.1')
        result = await machine.outcome(request, 'api')
        return result, [query.name for query in machine.nameserver.queries]


@difference('`attempts` and `timeout` in `/etc/resolv.conf`', 5, 2)
async def see_attempts():
    return await tries('options attempts:2 timeout:1\n')


@difference('the tries of a silent nameserver', 5, 4)
async def see_tries():
    return await tries()


async def tries(options=''):
    async with Machine(options=options) as machine, machine.pool() as request:
        machine.answers['name.test'] = SILENCE
        await machine.outcome_in_time(request)
        return machine.count(kind='A')


@difference('which nameserver is asked first', 3, 1)
async def see_dead_nameserver():
    async with Machine('127.0.0.1', '127.0.0.2') as machine, machine.pool() as request:
        machine.nameserver.answers_at['127.0.0.1'] = SILENCE
        for number in range(3):
            machine.answers[f'{number}.test'] = found('127.0.0.1')
            assert await machine.outcome_in_time(request, f'{number}.test') == (b'200', b'ok')
        return machine.count(kind='A', at='127.0.0.1')


@difference('an answer longer than 512 bytes, which nameservers cut',
            ('HttpDnsError', 'DnsNoMatchingAnswers'), (b'200', b'ok'))
async def see_long_answer():
    async with Machine() as machine, machine.pool() as request:
        machine.answers['name.test'] = found(
            '127.0.0.1', *(f'127.0.0.{number}' for number in range(2, 101)))
        return await machine.outcome(request)


# Time

@difference('the time for the lookup, connecting and the TLS handshake', ['waits'] * 3, [
    (error, 'TimeoutError') for error in ('HttpDnsError', 'HttpConnectionError', 'HttpTlsError')])
async def see_time_of_connecting():
    def get_dns_resolver(get_logger_adapter=None):
        async def resolve(host, record_type, get_logger_adapter=None):
            await asyncio.get_running_loop().create_future()

        async def clear_cache(get_logger_adapter=None):
            pass

        return resolve, clear_cache

    class Silent(socket.socket):
        def connect(self, address):
            raise BlockingIOError(errno.EINPROGRESS, 'in progress')

    def get_sock(*family):
        # Never writable, so it never connects.
        ours, theirs = socket.socketpair()
        sock = Silent(fileno=ours.detach())
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                sock.send(b'x' * 4096)
        others.append(theirs)
        return sock

    others = []
    results = [
        await is_over_in_time(hang, 'http://a.example/', get_dns_resolver=get_dns_resolver),
        await is_over_in_time(hang, 'http://127.0.0.1:{port}/', get_sock=get_sock),
        await is_over_in_time(hang, 'https://127.0.0.1:{port}/')]
    for sock in others:
        sock.close()
    return results


@difference('the time for the head of a response', 'waits', ('HttpDataError', 'TimeoutError'))
async def see_time_of_head():
    async def trickle(peer):
        await peer.read_head()
        for number in range(1000):
            await peer.send(b'HTTP/1.1 200 OK\r\na: '[number:number + 1] or b'x')
            await asyncio.sleep(0.1)

    return await is_over_in_time(trickle, 'http://127.0.0.1:{port}/')


@difference('time-outs while reading a body',
            ('TimeoutError', None), ('HttpDataError', 'TimeoutError'))
async def see_time_of_body():
    async def script(peer):
        await peer.read_head()
        await peer.send(b'HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabc')
        await peer.closed()

    return await is_over_in_time(script, 'http://127.0.0.1:{port}/')


@difference('`cancelling()` after a time-out', [1, 2], [0, 0])
async def see_cancelling():
    loop = asyncio.get_running_loop()
    counts = []
    async with Server(hang) as server:
        request, close = Pool(socket_timeout=0.01)
        await outcome(request(b'GET', server.url))
        counts.append(asyncio.current_task().cancelling())
        with contextlib.suppress(TimeoutError), timeout(loop, 0.01):
            await loop.create_future()
        counts.append(asyncio.current_task().cancelling())
        await close()
        return counts


# Errors

@difference('the message of an error', '', 'GET http://127.0.0.1:PORT: connecting failed: ')
async def see_message():
    with socket.create_server(('127.0.0.1', 0)) as sock:
        port = sock.getsockname()[1]
    request, close = Pool()
    with pytest.raises(HttpConnectionError) as caught:
        await request(b'GET', f'http://127.0.0.1:{port}/')
    await close()
    return str(caught.value).replace(str(port), 'PORT').partition('127.0.0.1: ')[0]


@difference('what an error knows', (None, None, None), (True, False, 'EOFError'))
async def see_facts():
    async def script(peer):
        await peer.read_head()
        await peer.send(OK)
        await peer.read_head()

    async with Server(script) as server:
        request, close = Pool()
        await outcome(request(b'GET', server.url))
        with pytest.raises(HttpDataError) as caught:
            await request(b'GET', server.url)
        await close()
        return (getattr(caught.value, 'reused', None),
                getattr(caught.value, 'response_started', None), raised(caught.value)[1])


@difference('a body function that fails at first',
            ('HttpDataError', 'ZeroDivisionError'), ('HttpConnectionError', 'ZeroDivisionError'))
async def see_failing_body():
    async def body():
        yield b'%d' % (1 // 0)

    async with Server(Answering(OK)) as server:
        request, close = Pool()
        result = await outcome(request(
            b'PUT', server.url, headers=((b'content-length', b'3'),), body=body))
        await close()
        return result


# The pool

@difference('`Pool()` without an event loop', 'RuntimeError', 'a pool')
async def see_no_loop():
    def make():
        try:
            Pool()
        except RuntimeError as error:
            return type(error).__name__
        return 'a pool'

    return await asyncio.get_running_loop().run_in_executor(None, make)


@difference('options by position', True, False)
async def see_positions():
    return any(parameter.kind is parameter.POSITIONAL_OR_KEYWORD
               for parameter in inspect.signature(Pool).parameters.values())


GONE = ('sock_pre_message', 'sock_post_message', 'send_header', 'send_body')


@difference('`sock_pre_message`, `sock_post_message`, `send_header`, `send_body`', GONE, ())
async def see_options():
    return tuple(name for name in GONE if name in inspect.signature(Pool).parameters)


@difference('how `get_sock` is called',
            ((), (b'200', b'ok')), ((socket.AF_INET,), (b'200', b'ok')))
async def see_get_sock():
    called_with = []

    def get_sock(*arguments):
        called_with.append(arguments)
        sock = socket.socket()
        sock.setblocking(False)
        return sock

    async with Server(Answering(OK)) as server:
        request, close = Pool(get_sock=get_sock)
        result = await outcome(request(b'GET', server.url))
        await close()
        return called_with[0], result


@difference('when `get_dns_resolver` and `get_ssl_context` are called',
            ['context', 'resolver', 'Pool()'], ['Pool()', 'resolver', 'context'])
async def see_when_options_are_called():
    calls = []

    def get_dns_resolver(get_logger_adapter=None):
        calls.append('resolver')
        return resolver_of([], A=[ipaddress.ip_address('127.0.0.1')])()

    def get_ssl_context():
        calls.append('context')
        return trusting()

    async with Server(Answering(OK), certified('a.example')) as server:
        request, close = Pool(get_dns_resolver=get_dns_resolver, get_ssl_context=get_ssl_context)
        calls.append('Pool()')
        assert await outcome(request(b'GET', f'https://a.example:{server.port}/')) == (
            b'200', b'ok')
        await close()
        return calls


@difference('a request after `close()`', (b'200', b'ok'), ('HttpConnectionError', 'RuntimeError'))
async def see_closed():
    async with Server(Answering(OK)) as server:
        request, close = Pool()
        await close()
        return await outcome(request(b'GET', server.url))


@difference('what is logged for a request', {'DEBUG': True, 'INFO': []}, {
    'DEBUG': True,
    'INFO': ['[http:GET,ORIGIN/] Received 200 from ORIGIN (peer 127.0.0.1:PORT)']})
async def see_logs():
    records = collections.defaultdict(list)

    class Handler(logging.Handler):
        def emit(self, record):
            records[record.levelname].append(record.getMessage())

    logger = logging.Logger('lowhaio')
    logger.addHandler(Handler())
    async with Server(Answering(OK)) as server:
        request, close = Pool(get_logger_adapter=lambda extra: HttpLoggerAdapter(logger, extra))
        await outcome(request(b'GET', server.url, params=(('a', 'b'),)))
        await close()
        messages = [message.replace(server.origin, 'ORIGIN').replace(str(server.port), 'PORT')
                    for message in records['INFO']]
        return {'DEBUG': bool(records['DEBUG']), 'INFO': messages}


@difference('other names',
            {'get_nonblocking_sock': True, 'recv': True, 'send_all': True, 'max_time': True},
            {'get_nonblocking_sock': False, 'recv': False, 'send_all': False, 'max_time': False})
async def see_names():
    return {**{name: hasattr(lowhaio, name)
               for name in ('get_nonblocking_sock', 'recv', 'send_all')},
            'max_time': 'max_time' in inspect.signature(timeout).parameters}
