"""Tests of what is installed: the distributions, and the types in them.

They are built from a copy of this directory, without the network, and installed beside what the
tests need: the core from its wheel, each layer from its own sources. Code of a user is then
checked as it would be there.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def run(*command, cwd, **variables):
    """What it prints. That of type checkers is looked at whether or not they find errors."""
    ended = subprocess.run(
        [sys.executable, '-m', *command], cwd=cwd, env={**os.environ, **variables}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600, check=False)
    return ended.stdout, ended.returncode


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
    """A copy, without what building and testing has left here."""
    ignored = [line.rstrip('/') for line in (ROOT / '.gitignore').read_text().split()]
    return shutil.copytree(ROOT, tmp_path_factory.mktemp('sources') / 'lowhaio', symlinks=True,
                           ignore=shutil.ignore_patterns('.git', '.nox', *ignored))


@pytest.fixture(scope='module')
def distributions(sources, tmp_path_factory):
    """The directory of the sdist, and of the wheel that was built from it."""
    directory = tmp_path_factory.mktemp('distributions')
    printed, code = run('build', '--no-isolation', '--outdir', directory, cwd=sources)
    assert code == 0, printed
    return directory


@pytest.fixture(scope='module')
def layers(sources, tmp_path_factory):
    """The distributions of their sources, each made from nothing but its own directory."""
    directory = tmp_path_factory.mktemp('layers')
    for layer in sources.glob('layers/*/setup.py'):
        printed, code = run('build', '--no-isolation', '--sdist', '--outdir', directory,
                            cwd=layer.parent)
        assert code == 0, printed
    return list(directory.iterdir())


@pytest.fixture(scope='module')
def site(distributions, layers, tmp_path_factory):
    """A directory to which all were installed. The sources are not beside them."""
    directory = tmp_path_factory.mktemp('site')
    printed, code = run('pip', 'install', '--no-deps', '--no-index', '--no-build-isolation',
                        '--no-compile', '--target', directory, *distributions.glob('*.whl'),
                        *layers, cwd=directory)
    assert code == 0, printed
    return directory


# ----------------------------------------------------------------------- the distributions


def test_the_wheel_holds_the_module_its_types_and_its_licence(distributions):
    [path] = distributions.glob('*.whl')
    with zipfile.ZipFile(path) as wheel:
        names = {re.sub(r'^lowhaio-[0-9.]+\.', '', name) for name in wheel.namelist()}
        assert names == {
            'lowhaio.py', 'lowhaio-stubs/__init__.pyi', 'dist-info/licenses/LICENSE',
            'dist-info/METADATA', 'dist-info/RECORD', 'dist-info/WHEEL',
            'dist-info/top_level.txt'}
        assert wheel.read('lowhaio.py') == (ROOT / 'lowhaio.py').read_bytes()
        # The names that it makes public, without what implements them.
        stub = wheel.read('lowhaio-stubs/__init__.pyi')
        assert stub == (ROOT / 'lowhaio-stubs' / '__init__.pyi').read_bytes()
        assert len(stub) < 10_000


def test_each_layer_is_installed_as_a_module_its_types_and_its_licence(site):
    modules = list(ROOT.glob('layers/*/lowhaio_*.py'))
    for module in modules:
        stub = site / f'{module.stem}-stubs' / '__init__.pyi'
        assert (site / module.name).read_bytes() == module.read_bytes()
        assert stub.read_bytes() == (module.parent / stub.relative_to(site)).read_bytes()
        [licence] = site.glob(f'{module.stem}-*.dist-info/licenses/LICENSE')
        assert licence.read_bytes() == (ROOT / 'LICENSE').read_bytes()
        assert not stub.is_symlink()
        assert not licence.is_symlink()
    top = {path.name for path in site.iterdir() if path.suffix != '.dist-info'}
    assert top == {'lowhaio.py', 'lowhaio-stubs', *(module.name for module in modules),
                   *(f'{module.stem}-stubs' for module in modules)}


def test_the_sdist_of_each_layer_holds_its_licence(layers):
    assert len(layers) == len(list(ROOT.glob('layers/*/setup.py')))
    for path in layers:
        with tarfile.open(path) as sdist:
            licence = sdist.extractfile(f'{path.name.removesuffix(".tar.gz")}/LICENSE')
            assert licence.read() == (ROOT / 'LICENSE').read_bytes()


def test_the_sdist_holds_what_is_needed_to_build_and_test(sources, distributions):
    [path] = distributions.glob('*.tar.gz')
    with tarfile.open(path) as sdist:
        names = {pathlib.PurePath(*pathlib.PurePath(name).parts[1:])
                 for name in sdist.getnames()}
    needed = {path.relative_to(sources) for pattern in ('*.py', '*.md')
              for path in sources.rglob(pattern)}
    assert needed | {pathlib.PurePath(name) for name in (
        'LICENSE', 'MANIFEST.in', 'pyproject.toml', '.ci/run')} <= names


def test_each_habit_is_a_command_that_contributors_are_told_of():
    commands = re.findall(r'^def (\w+)\(session', (ROOT / 'noxfile.py').read_text(), re.MULTILINE)
    told = re.findall(r'^\| `nox -s (\w+)` \|', (ROOT / 'CONTRIBUTING.md').read_text(),
                      re.MULTILINE)
    assert commands == told


def test_the_layers_stack_as_they_are_installed(site, tmp_path):
    shutil.copy(ROOT / 'layers' / 'stacked.py', tmp_path)
    printed, code = run('stacked', cwd=tmp_path, PYTHONPATH=str(site))
    assert code == 0, printed
    assert printed.splitlines() == [
        f'200 {scheme} known=1 row 0, row 1, row 2, '
        for scheme in ('Basic', 'AWS4-HMAC-SHA256', 'AWS4-HMAC-SHA256')]


# ------------------------------------------------------------------------------- the types

# Where a line is wrong, its comment has the code of mypy's error. There is none anywhere else.
CODE = '''\
# pyright: strict
import asyncio
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, assert_type

from lowhaio import (
    Close,
    ConnectionFacts,
    Fields,
    HttpError,
    HttpLoggerAdapter,
    Phase,
    Pool,
    Request,
    Response,
    ResponseBody,
    buffered,
    empty_async_iterator,
    repeatable,
    streamed,
    timeout,
)

URL = 'https://www.example.com/'


async def chunks(*numbers: int) -> AsyncIterator[bytes]:
    for number in numbers:
        yield b'%d' % number


async def no_generator() -> AsyncIterator[bytes]:
    return chunks()


async def in_memory() -> bytes:
    return b''


async def strings() -> AsyncIterator[str]:
    yield ''


async def responses() -> None:
    request, close = Pool()
    assert_type(request, Request)
    assert_type(close, Close)
    code, headers, body = await request(b'GET', URL)
    assert_type(code, bytes)
    assert_type(headers, Fields)
    assert_type(body, ResponseBody)
    async for chunk in body:
        assert_type(chunk, bytes)
    assert_type(body.trailers, Fields)
    assert_type(body.request_sent, bool)
    assert_type(body.http_version, bytes)
    assert_type(body.reason, bytes)
    assert_type(body.connection, ConnectionFacts)
    assert_type(body.connection.certificate, bytes | None)
    await body.send('text')  # error: arg-type
    assert_type(await buffered(body), bytes)
    await body.aclose()
    await close()
    dict(headers)['date']  # error: index
    code == '200'  # error: comparison-overlap
    for chunk in body:  # error: attr-defined
        print('of a body that is not synchronous')


async def requests(request: Request, close: Close, body: ResponseBody) -> None:
    await request(b'GET', URL, (('a', 1), ('b', [2, 3])), [(b'a', b'b')])
    await request(b'GET', URL, params={'a': 'b'}, headers=iter([(b'a', b'b')]))
    await request(b'PUT', URL, body=chunks, body_args=(1, 2), body_kwargs={})
    await request(b'PUT', URL, body=streamed(b'ok'))
    await request(b'PUT', URL, body=empty_async_iterator)
    await request(b'PUT', URL, body=lambda: body)
    await request(b'GET', URL, timeouts={'read': 600, 'connect': 2.5, 'pool': None})
    await request(b'OPTIONS', URL, target=b'*', server_hostname='www.example.net')
    async with asyncio.TaskGroup() as group:
        assert_type(group.create_task(request(b'GET', URL)), asyncio.Task[Response])

    await request('GET', URL)  # error: arg-type
    await request(b'GET', b'https://www.example.com/')  # error: arg-type
    await request(b'GET')  # error: call-arg
    await request(b'GET', URL, params='a=b')  # error: arg-type
    await request(b'GET', URL, ((b'accept', b'*/*'),))  # error: arg-type
    await request(b'GET', URL, {b'accept': b'*/*'})  # error: dict-item
    await request(b'GET', URL, headers=(('accept', '*/*'),))  # error: arg-type
    await request(b'GET', URL, headers=((b'content-length', 3),))  # error: arg-type
    await request(b'GET', URL, headers=(b'accept', b'*/*'))  # error: arg-type
    await request(b'GET', URL, headers=['accept: */*'])  # error: list-item
    await request(b'GET', URL, headers={b'accept': b'*/*'})  # error: dict-item
    await request(b'PUT', URL, body=b'in memory')  # error: arg-type
    await request(b'PUT', URL, body='in memory')  # error: arg-type
    await request(b'PUT', URL, body=['a', 'b'])  # error: arg-type
    await request(b'PUT', URL, body=in_memory)  # error: arg-type
    await request(b'PUT', URL, body=in_memory())  # error: arg-type
    await request(b'PUT', URL, body=no_generator)  # error: arg-type
    await request(b'PUT', URL, body=chunks())  # error: arg-type
    await request(b'PUT', URL, body=strings)  # error: arg-type
    await request(b'PUT', URL, body_args=1)  # error: arg-type
    await request(b'PUT', URL, timeout=1)  # error: call-arg
    await request(b'GET', URL, timeouts=1)  # error: arg-type
    await request(b'GET', URL, timeouts={'read': '1'})  # error: dict-item
    await request(b'GET', URL, target='*')  # error: arg-type
    await request(b'GET', URL, server_hostname=b'www.example.net')  # error: arg-type
    streamed('in memory')  # error: arg-type
    await request(b'PUT', URL, body=repeatable(chunks), body_args=(1,))
    assert_type(await buffered(repeatable(chunks)(1, 2)), bytes)
    assert_type(await buffered(repeatable(chunks, lambda chunks: chunks)(1, 2)), bytes)
    repeatable(chunks)('1')  # error: arg-type
    repeatable(chunks())  # error: arg-type
    repeatable(strings)  # error: arg-type

    request(b'GET', URL)  # error: unused-coroutine
    close()  # error: unused-coroutine


def layer(request: Request) -> Request:
    async def inner(method: bytes, url: str, *args: Any, **kwargs: Any) -> Response:
        try:
            return await request(method, url, *args, **kwargs)
        except HttpError as error:
            assert_type(error.reused or error.response_started, bool)
            assert_type(error.phase, Phase | str)
            raise

    return inner


def short_layer(request: Request) -> Request:
    async def inner(method: bytes, url: str) -> Response:
        return await request(method, url)

    return inner  # error: return-value


class CountedBody:
    def __init__(self, body: ResponseBody) -> None:
        self.body = body
        self.count = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        chunk = await anext(self.body)
        self.count += len(chunk)
        return chunk

    async def aclose(self) -> None:
        await self.body.aclose()

    @property
    def trailers(self) -> Fields:
        return self.body.trailers

    @property
    def request_sent(self) -> bool:
        return self.body.request_sent

    @property
    def http_version(self) -> bytes:
        return self.body.http_version

    @property
    def reason(self) -> bytes:
        return self.body.reason

    @property
    def connection(self) -> ConnectionFacts:
        return self.body.connection

    async def send(self, data: bytes) -> None:
        await self.body.send(data)


def layer_with_a_body(request: Request) -> Request:
    async def inner(method: bytes, url: str, *args: Any, **kwargs: Any) -> Response:
        code, headers, body = await request(method, url, *args, **kwargs)
        return code, headers, CountedBody(body)

    return inner


def layer_without_a_body(request: Request) -> Request:
    async def inner(method: bytes, url: str, *args: Any, **kwargs: Any) -> Response:
        code, headers, _ = await request(method, url, *args, **kwargs)
        return code, headers, chunks()  # error: return-value

    return inner


async def resolve(
        host: str, record_type: int, get_logger_adapter: object,
) -> Iterable[ipaddress.IPv4Address]:
    return [ipaddress.IPv4Address('127.0.0.1')]


async def clear_cache(get_logger_adapter: object) -> None:
    pass


def get_dns_resolver(get_logger_adapter: object) -> tuple[
        Callable[..., Awaitable[Iterable[ipaddress.IPv4Address]]],
        Callable[..., Awaitable[None]]]:
    return resolve, clear_cache


async def get_connection(scheme: str, host: str, port: int) -> socket.socket:
    return socket.socket()


def get_connection_at_once(scheme: str, host: str, port: int) -> socket.socket:
    return socket.socket()


def get_logger_adapter(extra: dict[str, Any]) -> HttpLoggerAdapter:
    return HttpLoggerAdapter(logging.getLogger(), extra)


Pool(keep_alive_timeout=1, socket_timeout=0.5, max_connections=None, pool_timeout=1.5)
Pool(max_idle_connections=0)
Pool(get_dns_resolver=get_dns_resolver, get_logger_adapter=get_logger_adapter)
Pool(get_connection=get_connection, get_sock=lambda family: socket.socket(family))

Pool(get_dns_resolver)  # error: call-arg
Pool(timeout=1)  # error: call-arg
Pool(socket_timeout='1')  # error: arg-type
Pool(max_connections=1.5)  # error: arg-type
Pool(max_idle_connections='1')  # error: arg-type
Pool(http_version='HTTP/1.0')  # error: arg-type
Pool(get_dns_resolver=resolve)  # error: arg-type
Pool(get_connection=get_connection_at_once)  # error: arg-type
Pool(get_ssl_context=True)  # error: arg-type
Pool(get_logger_adapter=logging.getLogger())  # error: arg-type


def restarted() -> None:
    with timeout(asyncio.get_running_loop(), 0.5) as reset:
        reset()
'''


# The same, of code that stacks the layers.
STACKED = '''\
# pyright: strict
import asyncio
from collections.abc import AsyncIterator, Callable
from http.cookiejar import CookieJar
from typing import assert_type

import httpx
import httpx2
import lowhaio_httpx
from lowhaio import Fields, HttpError, Phase, Pool, Request, Response, ResponseBody, streamed
from lowhaio_auth import basic, bearer, digest
from lowhaio_aws_sigv4 import signed
from lowhaio_aws_sigv4_unsigned_payload import signed as signed_without_body
from lowhaio_chunked import chunked
from lowhaio_compression import compressed, decompressed
from lowhaio_cookies import with_cookies
from lowhaio_httpx2 import LowhaioAsyncClient, LowhaioTransport, client_for_openai
from lowhaio_redirect import Hop, HttpTooManyRedirects, hops, redirectable
from lowhaio_retry import if_idempotent, retry
from lowhaio_websocket import WebSocketClosedError, WebSocketHandshakeError, websocket

URL = 'https://www.example.com/'


async def get_token() -> str:
    return ''


async def forget(token: str) -> None:
    pass


async def credentials() -> tuple[str, str, Fields]:
    return '', '', ()


async def rows(*numbers: int) -> AsyncIterator[bytes]:
    for number in numbers:
        yield b'%d' % number


def stacked(request: Request) -> Request:
    request = basic(request, 'user', 'password', origin=URL)
    request = bearer(request, get_token, on_refused=forget)
    request = bearer(request, lambda: 'token', on_refused=print)
    request = digest(request, 'user', 'password')
    request = signed(request, credentials, 's3', 'eu-west-2')
    request = signed_without_body(request, credentials, 's3', 'eu-west-2')
    request = with_cookies(request, CookieJar())
    request = retry(request, [(HttpError, [0, 0.5])], should_retry=if_idempotent, jitter=0.5)
    request = retry(
        request, should_retry_response=lambda method, code, headers: (b'a', b'b') in headers,
        max_total=30, max_buffered=1000,
        on_retry=lambda attempt, seconds, outcome: print(attempt + 1, seconds / 2, outcome))
    request = redirectable(request, max_redirects=3, keep=[b'upload-offset'])
    return decompressed(request, max_length=1024)


as_layers: list[Callable[[Request], Request]] = [redirectable, retry, decompressed]


async def requests() -> None:
    request, _ = Pool()
    try:
        code, headers, body = await redirectable(retry(request))(b'GET', URL)
    except HttpTooManyRedirects as error:
        assert_type(error.response_started, bool)
        assert_type(error.hops, tuple[Hop, ...])
        assert_type(error.phase, Phase | str)
        return
    assert_type(hops(body)[-1].url, str)
    assert_type(hops(body)[-1].code, bytes)
    assert_type(code, bytes)
    assert_type(headers, Fields)
    await stacked(request)(
        b'PUT', URL, body=chunked(compressed(rows, b'gzip'), trailers=lambda: [(b'a', b'b')]))
    'text' + code  # error: operator


async def messages(request: Request) -> None:
    try:
        async with websocket(stacked(request), URL, ['chat'], max_message=None) as ws:
            await ws.send('text')
            await ws.send(rows())
            await ws.send(['te', 'xt'])
            assert_type(await ws.receive(), str | bytes)
            async for message in ws:
                assert_type(message, str | bytes)
            assert_type(await ws.ping(b'data', timeout=1), float)
            assert_type(ws.close_code, int | None)
            await ws.send(1)  # error: arg-type
            await ws.close('1000')  # error: arg-type
    except WebSocketHandshakeError as error:
        assert_type(error.body, bytes)
    except WebSocketClosedError as error:
        assert_type(error.code, int)
    async with websocket(request, URL) as (send, receive):
        await send(await receive())


async def clients() -> None:
    transport = LowhaioTransport(
        limits=httpx2.Limits(max_connections=3), proxy='http://192.0.2.1', retries=1,
        socket_options=[(1, 2, 3), (1, 2, b'3')])
    stock: list[httpx2.AsyncClient] = [httpx2.AsyncClient(transport=transport)]
    async with LowhaioAsyncClient(
            mounts={'https://': transport, 'http://': None}, timeout=3) as client:
        assert_type(client, LowhaioAsyncClient)
        assert_type((await client.get(URL)).status_code, int)
        stock.append(client)
    assert_type(client_for_openai(timeout=3), LowhaioAsyncClient)
    httpx.AsyncClient(transport=lowhaio_httpx.LowhaioTransport(verify=False))
    LowhaioTransport(timeout=3)  # error: call-arg
    LowhaioTransport(retries='3')  # error: arg-type
    LowhaioAsyncClient(limits=3)  # error: arg-type
    LowhaioAsyncClient(transport=lowhaio_httpx.LowhaioTransport())  # error: arg-type


request, _ = Pool()
websocket(request)  # error: call-arg
websocket(request, URL, compression=1)  # error: arg-type
redirectable()  # error: call-arg
redirectable(b'GET')  # error: type-var
redirectable(Pool())  # error: type-var
redirectable(request, max_redirects='3')  # error: arg-type
redirectable(request, keep=['upload-offset'])  # error: list-item
retry(request, [(HttpError, 3)])  # error: list-item
retry(request, intervals=())  # error: call-arg
retry(request, should_retry=True)  # error: arg-type
retry(request, on_retry=1)  # error: arg-type
retry(request, max_buffered='1')  # error: arg-type
basic(request, b'user', b'password')  # error: arg-type
bearer(request, 'token')  # error: arg-type
bearer(request, lambda: b'token')  # error: return-value
bearer(request, get_token, on_refused=True)  # error: arg-type
digest(request, 'user', 'password', algorithms=[1])  # error: list-item
digest(request, 'user')  # error: call-arg
signed(request, ('id', 'secret', ()), 's3', 'eu-west-2')  # error: arg-type
signed_without_body(request, credentials, 's3')  # error: call-arg
with_cookies(request)  # error: call-arg
with_cookies(request, CookieJar(), True)  # error: call-arg
with_cookies(request, CookieJar(), loopback_is_secure='always')  # error: arg-type
decompressed(request, max_length='1')  # error: arg-type
chunked(streamed(b''), trailers=())  # error: arg-type
chunked(rows())  # error: arg-type
chunked(rows)('1')  # error: arg-type
compressed(rows, 'gzip')  # error: arg-type
compressed(rows, b'gzip')('1')  # error: arg-type
'''


# The same errors, through each layer. What it returns is a `Request`, as a user may say.
THROUGH = '''

async def through_layer_{number}(request: Request) -> Request:
    layered = {layer}
    code, headers, body = await layered(b'GET', URL, (('a', 1),), [(b'a', b'b')])
    assert_type(code, bytes)
    assert_type(headers, Fields)
    assert_type(body, ResponseBody)
    async with asyncio.TaskGroup() as group:
        assert_type(group.create_task(layered(b'GET', URL)), asyncio.Task[Response])
    await layered(b'PUT', URL, body=rows, body_args=(1,), body_kwargs={{}})
    await layered(b'GET', URL, timeouts={{'read': 1, 'pool': None}}, target=b'*',
                  server_hostname='www.example.net')

    layered(b'GET', URL)  # error: unused-coroutine
    await layered('GET', URL)  # error: arg-type
    await layered(b'GET')  # error: call-arg
    await layered(b'GET', URL, headers=(('a', 'b'),))  # error: arg-type
    await layered(b'GET', URL, headers={{b'a': b'b'}})  # error: dict-item
    await layered(b'GET', URL, body=b'in memory')  # error: arg-type
    await layered(b'GET', URL, body=rows(1))  # error: arg-type
    await layered(b'GET', URL, timeout=1)  # error: call-arg
    await layered(b'GET', URL, timeouts={{'read': '1'}})  # error: dict-item
    await layered(b'GET', URL, target='*')  # error: arg-type
    await layered(b'GET', URL, server_hostname=b'name')  # error: arg-type
    return layered
'''
LAYERS = (
    "basic(request, 'user', 'password')",
    'bearer(request, get_token)',
    "digest(request, 'user', 'password')",
    "signed(request, credentials, 's3', 'eu-west-2')",
    "signed_without_body(request, credentials, 's3', 'eu-west-2')",
    'with_cookies(request, CookieJar())',
    'retry(request)',
    'redirectable(request)',
    'decompressed(request)',
)
STACKED += ''.join(THROUGH.format(number=number, layer=layer)
                   for number, layer in enumerate(LAYERS))
FILES = {'user.py': CODE, 'stacked.py': STACKED}


@pytest.fixture(scope='module')
def user(tmp_path_factory):
    directory = tmp_path_factory.mktemp('user')
    for name, code in FILES.items():
        (directory / name).write_text(code)
    (directory / 'mypy.ini').write_text(
        '[mypy]\n[mypy-aiodnsresolver]\nignore_missing_imports = True\n')
    # So that pyright takes no configuration of a directory above.
    (directory / 'pyrightconfig.json').write_text('{}')
    # To stubtest, what lru_cache wraps takes anything: that is how it is declared. And it takes
    # what mypy makes up after `callable(…)` for a part of the module.
    (directory / 'allowed.txt').write_text(
        'lowhaio_cookies\\.(?:canonical_host|public_suffixes)\n'
        'lowhaio\\w*\\.<callable subtype of \\w+>\n')
    return directory


def expected_errors():
    return {(name, number): match[1] for name, code in FILES.items()
            for number, line in enumerate(code.splitlines(), 1)
            if (match := re.search('# error: ([a-z-]+)$', line))}


def test_mypy_finds_the_errors_of_a_user_and_no_other(user, site):
    printed, _ = run('mypy', '--strict', '--config-file=', '--cache-dir', user / 'cache', *FILES,
                     cwd=user, PYTHONPATH=str(site))
    errors = re.findall(r'^(.*):([0-9]+): error: .*\[([a-z-]+)\]$', printed, re.MULTILINE)
    found = {(name, int(number)): code for name, number, code in errors}
    assert found == expected_errors(), printed


def test_pyright_finds_the_errors_of_a_user_and_no_other(user, site):
    printed, _ = run('pyright', '--outputjson', '--pythonpath', sys.executable, *FILES,
                     cwd=user, PYTHONPATH=str(site))
    diagnostics = json.loads(printed[printed.index('{'):])['generalDiagnostics']
    found = {(pathlib.Path(diagnostic['file']).name, diagnostic['range']['start']['line'] + 1)
             for diagnostic in diagnostics}
    assert found == expected_errors().keys(), diagnostics


def test_the_stubs_are_those_of_the_modules():
    printed = subprocess.run([sys.executable, ROOT / '.ci' / 'stubs.py', '--check'],
                             stderr=subprocess.PIPE, text=True, check=False).stderr
    assert printed == ''


def test_mypy_takes_no_other_types_of_a_module_than_those_of_a_stub_only_package(
        user, site, tmp_path):
    """Why the distributions have such packages, and no `py.typed` or `.pyi` beside the module."""
    # By another name, because the stubs of lowhaio may be installed where mypy is.
    (tmp_path / 'alone.py').write_bytes((site / 'lowhaio.py').read_bytes())
    (tmp_path / 'alone.pyi').write_bytes((site / 'lowhaio-stubs/__init__.pyi').read_bytes())
    (tmp_path / 'py.typed').touch()
    printed, _ = run('mypy', '--config-file=', '--cache-dir', tmp_path / 'cache', '-c',
                     'import alone', cwd=user, PYTHONPATH=str(tmp_path))
    assert 'missing library stubs or py.typed marker  [import-untyped]' in printed


def test_the_types_agree_with_the_modules(user, site):
    modules = [path.stem for path in site.glob('*.py')]
    printed, code = run(
        'mypy.stubtest', *modules, '--mypy-config-file', 'mypy.ini', '--allowlist', 'allowed.txt',
        '--ignore-unused-allowlist', cwd=user, PYTHONPATH=str(site))
    assert code == 0, printed
