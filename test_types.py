"""Tests of what is installed: the distributions, and the types in them.

Both are built from a copy of this directory, without the network, and the wheel is installed
beside what the tests need. Code of a user is then checked as it would be there.
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

HERE = pathlib.Path(__file__).parent


def run(*command, cwd, **variables):
    """What it prints. That of type checkers is looked at whether or not they find errors."""
    ended = subprocess.run(
        [sys.executable, '-m', *command], cwd=cwd, env={**os.environ, **variables}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, check=False)
    return ended.stdout, ended.returncode


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
    """A copy, without what building and testing has left here."""
    ignored = [line.rstrip('/') for line in (HERE / '.gitignore').read_text().split()]
    return shutil.copytree(HERE, tmp_path_factory.mktemp('sources') / 'lowhaio',
                           ignore=shutil.ignore_patterns('.git', '.nox', *ignored))


@pytest.fixture(scope='module')
def distributions(sources, tmp_path_factory):
    """The directory of the sdist, and of the wheel that was built from it."""
    directory = tmp_path_factory.mktemp('distributions')
    printed, code = run('build', '--no-isolation', '--outdir', directory, cwd=sources)
    assert code == 0, printed
    return directory


@pytest.fixture(scope='module')
def site(distributions, tmp_path_factory):
    """A directory to which the wheel was installed. Nothing else of lowhaio is beside it."""
    directory = tmp_path_factory.mktemp('site')
    [wheel] = distributions.glob('*.whl')
    printed, code = run('pip', 'install', '--no-deps', '--no-index', '--no-compile', '--target',
                        directory, wheel, cwd=directory)
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
        module = (HERE / 'lowhaio.py').read_bytes()
        assert wheel.read('lowhaio.py') == wheel.read('lowhaio-stubs/__init__.pyi') == module


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
    commands = re.findall(r'^def (\w+)\(session', (HERE / 'noxfile.py').read_text(), re.MULTILINE)
    told = re.findall(r'^\| `nox -s (\w+)` \|', (HERE / 'CONTRIBUTING.md').read_text(),
                      re.MULTILINE)
    assert commands == told


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
    Fields,
    HttpError,
    HttpLoggerAdapter,
    Pool,
    Request,
    Response,
    ResponseBody,
    buffered,
    empty_async_iterator,
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
    async with asyncio.TaskGroup() as group:
        assert_type(group.create_task(request(b'GET', URL)), asyncio.Task[Response])

    await request('GET', URL)  # error: arg-type
    await request(b'GET', b'https://www.example.com/')  # error: arg-type
    await request(b'GET')  # error: call-arg
    await request(b'GET', URL, params='a=b')  # error: arg-type
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
    streamed('in memory')  # error: arg-type

    request(b'GET', URL)  # error: unused-coroutine
    close()  # error: unused-coroutine


def layer(request: Request) -> Request:
    async def inner(method: bytes, url: str, *args: Any, **kwargs: Any) -> Response:
        try:
            return await request(method, url, *args, **kwargs)
        except HttpError as error:
            assert_type(error.reused or error.response_started, bool)
            raise

    return inner


def short_layer(request: Request) -> Request:
    async def inner(method: bytes, url: str) -> Response:
        return await request(method, url)

    return inner  # error: return-value


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
Pool(get_dns_resolver=get_dns_resolver, get_logger_adapter=get_logger_adapter)
Pool(get_connection=get_connection, get_sock=lambda family: socket.socket(family))

Pool(get_dns_resolver)  # error: call-arg
Pool(timeout=1)  # error: call-arg
Pool(socket_timeout='1')  # error: arg-type
Pool(max_connections=1.5)  # error: arg-type
Pool(http_version='HTTP/1.0')  # error: arg-type
Pool(get_dns_resolver=resolve)  # error: arg-type
Pool(get_connection=get_connection_at_once)  # error: arg-type
Pool(get_ssl_context=True)  # error: arg-type
Pool(get_logger_adapter=logging.getLogger())  # error: arg-type


def restarted() -> None:
    with timeout(asyncio.get_running_loop(), 0.5) as reset:
        reset()
'''


@pytest.fixture(scope='module')
def user(tmp_path_factory):
    directory = tmp_path_factory.mktemp('user')
    (directory / 'user.py').write_text(CODE)
    (directory / 'mypy.ini').write_text(
        '[mypy]\n[mypy-aiodnsresolver]\nignore_missing_imports = True\n')
    # To stubtest, what lru_cache wraps takes anything: that is how it is declared.
    (directory / 'cached.txt').write_text(r'lowhaio\.parse_\w+')
    return directory


def expected_errors():
    return {number: match[1] for number, line in enumerate(CODE.splitlines(), 1)
            if (match := re.search('# error: ([a-z-]+)$', line))}


def test_mypy_finds_the_errors_of_a_user_and_no_other(user, site):
    printed, _ = run('mypy', '--strict', '--config-file=', '--cache-dir', user / 'cache',
                     'user.py', cwd=user, PYTHONPATH=str(site))
    found = re.findall(r'^user\.py:([0-9]+): error: .*\[([a-z-]+)\]$', printed, re.MULTILINE)
    assert {int(number): code for number, code in found} == expected_errors(), printed


def test_pyright_finds_the_errors_of_a_user_and_no_other(user, site):
    printed, _ = run('pyright', '--outputjson', '--pythonpath', sys.executable, 'user.py',
                     cwd=user, PYTHONPATH=str(site))
    diagnostics = json.loads(printed[printed.index('{'):])['generalDiagnostics']
    found = {diagnostic['range']['start']['line'] + 1 for diagnostic in diagnostics}
    assert found == expected_errors().keys(), diagnostics


def test_the_types_agree_with_the_module(user, site):
    printed, code = run(
        'mypy.stubtest', 'lowhaio', '--mypy-config-file', 'mypy.ini', '--allowlist', 'cached.txt',
        '--ignore-unused-allowlist', cwd=user, PYTHONPATH=str(site))
    assert code == 0, printed
