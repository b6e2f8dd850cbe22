"""Tests of what is installed: the distributions, and the types in them.

They are built from a copy of this directory, without the network, and installed beside what the
tests need: the core from its wheel, and the layers twice, each from its own sources, and all of
them from the wheel of lowhaio-layers. Code of a user is then checked as it would be there.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from importlib import metadata

import pytest
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).parents[2]

# The layers that are not a single module.
PACKAGES = [path.parent for path in ROOT.glob('layers/*/lowhaio_*/__init__.py')]


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


@pytest.fixture(scope='module')
def all_layers(sources, tmp_path_factory):
    """The directory of the sdist of lowhaio-layers, and of the wheel that was built from it."""
    directory = tmp_path_factory.mktemp('all_layers')
    printed, code = run('build', '--no-isolation', '--outdir', directory, cwd=sources / 'layers')
    assert code == 0, printed
    return directory


@pytest.fixture(scope='module')
def environment(distributions, all_layers, tmp_path_factory):
    """The Python of a fresh environment in which only the two wheels are installed.

    What they need is where these tests have it.
    """
    directory = tmp_path_factory.mktemp('environment')
    venv.create(directory)
    python = directory / 'bin' / 'python'
    printed, code = run('pip', '--python', python, 'install', '--no-deps', '--no-index',
                        *distributions.glob('*.whl'), *all_layers.glob('*.whl'), cwd=directory)
    assert code == 0, printed
    [packages] = directory.glob('lib/python*/site-packages')
    (packages / 'needed.pth').write_text(sysconfig.get_path('purelib'))
    return python


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
    for package in PACKAGES:
        files = {path.name: path.read_bytes() for path in package.iterdir() if path.is_file()}
        assert {path.name: path.read_bytes() for path in (site / package.name).iterdir()} == files
        assert 'py.typed' in files
        [licence] = site.glob(f'{package.name}-*.dist-info/licenses/LICENSE')
        assert licence.read_bytes() == (ROOT / 'LICENSE').read_bytes()
    top = {path.name for path in site.iterdir() if path.suffix != '.dist-info'} - {'bin'}
    assert top == {'lowhaio.py', 'lowhaio-stubs', *(module.name for module in modules),
                   *(f'{module.stem}-stubs' for module in modules),
                   *(package.name for package in PACKAGES)}


def test_all_layers_together_are_the_files_that_each_of_them_is(site, all_layers):
    [path] = all_layers.glob('*.whl')
    with zipfile.ZipFile(path) as wheel:
        files = {name: wheel.read(name) for name in wheel.namelist() if '.dist-info/' not in name}
        [licence] = [name for name in wheel.namelist() if name.endswith('/licenses/LICENSE')]
        assert wheel.read(licence) == (ROOT / 'LICENSE').read_bytes()
    assert files == {str(path.relative_to(site)): path.read_bytes()
                     for path in [*site.glob('lowhaio_*.py'), *site.glob('lowhaio_*/*')]
                     if path.parent.suffix != '.dist-info'}


def test_all_layers_together_need_what_each_of_them_needs(site, all_layers):
    """An extra has the name of the layer that needs it. Those of layers, such as zstd, are in one
    of the extras, and all of them are in "all"."""
    def needed(found, extra):
        environment = {'extra': extra, 'python_version': '3.11'}
        requirements = map(Requirement, found.requires)
        return {f'{one.name}{one.specifier}' for one in requirements
                if one.marker is None or one.marker.evaluate(environment)}

    [together] = metadata.distributions(path=[str(path) for path in all_layers.glob('*.whl')])
    extras = {extra: needed(together, extra) - {'lowhaio>=0.1'}
              for extra in together.metadata.get_all('Provides-Extra')}
    assert needed(together, '') == {'lowhaio>=0.1'}
    of_all, scripts = set(), set()
    for layer in metadata.distributions(path=[str(site)]):
        if layer.name != 'lowhaio':
            own = {one for one in needed(layer, '') if not one.startswith('lowhaio')}
            name = layer.name.removeprefix('lowhaio-')
            assert own <= extras.get(name, set()), name
            for extra in layer.metadata.get_all('Provides-Extra', []):
                own |= {one for one in needed(layer, extra) if not one.startswith('lowhaio')}
            of_all |= own
            scripts.update(layer.entry_points)
    assert extras['all'] == of_all == set().union(
        *(extras[extra] for extra in extras if extra != 'all'))
    assert {(script.name, script.value) for script in together.entry_points} == {
        (script.name, script.value) for script in scripts}


def test_all_layers_together_can_be_imported_where_only_they_are_installed(environment):
    files = {path.stem: path.name for path in ROOT.glob('layers/*/lowhaio_*.py')}
    files |= {path.name: f'{path.name}/__init__.py' for path in PACKAGES}
    code = f'import sys; {"; ".join(f"import {module}" for module in files)}; ' + \
        f'print(*(sys.modules[module].__file__ for module in {[*files]}), sep="\\n")'
    ended = subprocess.run([environment, '-I', '-c', code], stdout=subprocess.PIPE, text=True,
                           check=True)
    [packages] = environment.parents[1].glob('lib/python*/site-packages')
    assert ended.stdout.splitlines() == [str(packages / name) for name in files.values()]


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
from pathlib import Path
from typing import assert_type

import httpx
import httpx2
import lowhaio_httpx
from lowhaio import Fields, HttpError, Phase, Pool, Request, Response, ResponseBody, streamed
from lowhaio_auth import basic, bearer, digest
from lowhaio_aws_credentials import Credentials, CredentialsError, assumed_role, from_chain
from lowhaio_aws_sigv4 import presigned, signed, signed_for_regions
from lowhaio_aws_sigv4_streaming import checked
from lowhaio_aws_sigv4_streaming import signed as signed_with_checksum
from lowhaio_aws_sigv4_unsigned_payload import signed as signed_without_body
from lowhaio_chunked import chunked
from lowhaio_compression import compressed, decompressed
from lowhaio_cookies import with_cookies
from lowhaio_download import Downloaded, download
from lowhaio_form import form, multipart, sized
from lowhaio_httpx2 import LowhaioAsyncClient, LowhaioTransport, client_for_openai
from lowhaio_opentelemetry import Telemetry, TracedRequest, counted
from lowhaio_proxy import from_environment, proxied_pool
from lowhaio_redirect import Hop, HttpTooManyRedirects, hops, redirectable
from lowhaio_retry import if_idempotent, retry
from lowhaio_s3 import Bucket, Content, ObjectInfo, Page, S3DeleteError, S3Error, Written
from lowhaio_session import Session, SessionResponse, StatusError, compose
from lowhaio_sse import ServerSentEvent, events
from lowhaio_waterfall import Recorder, Timeline, html
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
    request = signed_for_regions(request, credentials, 's3', '*')
    request = signed_without_body(request, credentials, 's3', 'eu-west-2')
    request = signed_with_checksum(request, credentials, 's3', 'eu-west-2', checksum=None,
                                   signed_payload=True)
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
    assert_type(await presigned(URL, credentials, 's3', 'eu-west-2', params={'a': 'b'}), str)
    await stacked(request)(
        b'PUT', URL, body=chunked(compressed(rows, b'gzip'), trailers=lambda: [(b'a', b'b')]))
    'text' + code  # error: operator


async def forms(request: Request) -> None:
    body, headers = multipart({'a': 1}, {'b': Path('c'), 'd': ('e', b'f'), 'g': [b'h', b'i']})
    assert_type(headers, Fields)
    await request(b'POST', URL, headers=headers, body=body)
    await request(b'POST', URL, body=form([('a', ['b', 'c'])])[0])
    await request(b'PUT', URL, body=sized(open('a', 'rb'))[0])
    sized(1)  # error: arg-type
    multipart(files=1)  # error: arg-type
    form(1)  # error: arg-type


async def sessions(request: Request) -> None:
    async with Session(URL, headers={'a': 'b'}, auth=('user', 'password'), timeout=5,
                       cookies=CookieJar(),
                       limits={'max_connections': 2, 'pool_timeout': None}) as http:
        try:
            response = (await http.get('/items', params={'a': 1})).raise_for_status()
        except StatusError as error:
            assert_type(error.status, int)
            return
        assert_type(response, SessionResponse)
        assert_type(response.headers['a'], str)
        assert_type(await response.text(), str)
        await http.post('/items', json={'a': [1, None]}, timeout={'connect': 1, 'total': 5})
        async with http.stream('GET', '/items') as response:
            async for chunk in response:
                assert_type(chunk, bytes)
        assert_type(http.low_level, Request)
        await http.get(b'/items')  # error: arg-type
        await http.request(b'GET', '/items')  # error: arg-type
        await http.get('/items', timeouts={'read': 1})  # error: call-arg
        http.get('/items')  # error: unused-coroutine
        'text' + response.status  # error: operator
    Session(request=1)  # error: arg-type
    Session(limits='many')  # error: arg-type
    Session(limits=2, max_connections_per_origin=1)
    assert_type(compose(request, redirectable, retry), Request)
    assert_type(compose(request, counted, redirectable, retry, Telemetry().traced), Request)


async def long_ones(request: Request) -> None:
    async with events(request, URL, max_silence=60, params={'a': 'b'}) as stream:
        async for event in stream:
            assert_type(event, ServerSentEvent)
            assert_type(event.data, str)
    done = await download(request, URL, 'file', digest=('sha256', b''),
                          on_progress=lambda done, total: print(done + 1, total))
    assert_type(done, Downloaded)
    events(request, URL, max_silence='60')  # error: arg-type
    await download(request, URL, 1)  # error: arg-type


async def pools(request: Request) -> None:
    through_proxies, _ = proxied_pool(from_environment(), max_connections=2)
    assert_type(through_proxies, Request)
    proxied_pool(1)  # error: arg-type
    telemetry, recorder = Telemetry(), Recorder()
    Pool(on_event=telemetry.watcher())
    Pool(on_event=recorder)
    assert_type(telemetry.traced(request), TracedRequest)
    await telemetry.traced(request)(b'GET', URL, url_template='/{id}')
    await request(b'GET', URL, url_template='/{id}')  # error: call-arg
    for timeline in recorder.timelines:
        assert_type(timeline, Timeline)
    assert_type(html(recorder.timelines), str)


async def objects(request: Request) -> None:
    bucket = Bucket(request, 'name', credentials, 'eu-west-2', checksum='crc32', parallel=2)
    async with await bucket.get('key', start=-5, if_match='*') as content:
        assert_type(content, Content)
        assert_type(await content.read(), bytes)
        assert_type(content.info.size, int | None)
    assert_type(await bucket.download('key', print), ObjectInfo)
    assert_type(await bucket.put('key', rows(1), metadata={'a': 'b'}, size=1), Written)
    async for page in bucket.list('prefix', delimiter='/'):
        assert_type(page, Page)
        assert_type([each.size for each in page.objects], list[int])
    try:
        assert_type(await bucket.delete_many(['a', 'b']), int)
    except S3DeleteError as error:
        assert_type(error.failed, tuple[tuple[str, S3Error], ...])
    await bucket.put('key', 1)  # error: arg-type
    await bucket.get('key', if_match=b'a')  # error: arg-type


async def keys(request: Request) -> None:
    found = from_chain(retry(request), profile='p')
    role = assumed_role(request, found, 'arn', duration=900)
    assumed_role(request, credentials, 'arn')
    assert_type(role, Credentials)
    try:
        assert_type(await role(), tuple[str, str, Fields])
    except CredentialsError as error:
        assert_type(error.is_lasting, bool)
    role.forget()
    await signed(request, role, 's3', 'eu-west-2')(b'GET', URL)
    from_chain(request, 'p')  # error: call-arg
    assumed_role(request, ('id', 'secret'), 'arn')  # error: arg-type


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
signed_with_checksum(request, credentials, 's3', 'eu-west-2', checksum=b'')  # error: arg-type
checked()  # error: call-arg
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
    "signed_with_checksum(request, credentials, 's3', 'eu-west-2')",
    'checked(request)',
    'with_cookies(request, CookieJar())',
    'retry(request)',
    'redirectable(request)',
    'decompressed(request)',
    'counted(request)',
    'compose(request, counted, redirectable, retry)',
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


def test_the_types_are_found_where_all_layers_are_installed_together(user, environment):
    printed, _ = run('mypy', '--strict', '--config-file=', '--cache-dir', user / 'cache_together',
                     '--python-executable', environment, *FILES, cwd=user)
    errors = re.findall(r'^(.*):([0-9]+): error: ', printed, re.MULTILINE)
    assert {(name, int(number)) for name, number in errors} == expected_errors().keys(), printed
    printed, _ = run('pyright', '--outputjson', '--pythonpath', environment, *FILES, cwd=user)
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
