"""lowhaio_download with servers that others have written: ranges, `if-range`, etags and dates."""

import contextlib
import os
import pathlib
import re
import shutil
import sys
import time

import pytest

from lowhaio_download import DownloadStatusError, download
from tests.harness import on_loops, pool, through_unix_socket

sys.path.append(str(pathlib.Path(__file__).parent))

from s3_servers import process, waiting_for  # noqa: E402

OLD, NEW = os.urandom(300_000), os.urandom(300_001)

NGINX = '''
daemon off;
{user}
pid {directory}/pid;
error_log stderr;
worker_processes 1;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/temporary;
    proxy_temp_path {directory}/temporary;
    fastcgi_temp_path {directory}/temporary;
    uwsgi_temp_path {directory}/temporary;
    scgi_temp_path {directory}/temporary;
    gzip_types application/octet-stream;
    server {{
        listen unix:{directory}/socket;
        root {directory}/files;
        default_type application/octet-stream;
        location /dates/ {{ alias {directory}/files/; etag off; }}
        location /no-ranges/ {{ alias {directory}/files/; max_ranges 0; }}
        location /compressed/ {{ alias {directory}/files/; gzip on; gzip_min_length 1; }}
    }}
}}
'''

STARLETTE = """
import sys
import uvicorn
from starlette.applications import Starlette
from starlette.responses import FileResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

folder = sys.argv[1]
routes = [
    Route('/response/{name}', lambda request: FileResponse(
        f'{folder}/{request.path_params["name"]}')),
    Mount('/', StaticFiles(directory=folder)),
]
uvicorn.run(Starlette(routes=routes), port=0, lifespan='off')
"""

AIOHTTP = """
import asyncio
import sys
from aiohttp import web

async def main():
    app = web.Application()
    app.add_routes([web.static('/', sys.argv[1])])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, '127.0.0.1', 0).start()
    print(f'running on http://127.0.0.1:{runner.addresses[0][1]} ', flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@contextlib.contextmanager
def nginx(directory):
    program = shutil.which('nginx', path=f'{os.environ["PATH"]}:/usr/sbin')
    if program is None:
        pytest.skip('nginx is not installed')
    # Otherwise the workers of root are those of somebody else, who may not read here.
    user = 'user root;' if os.getuid() == 0 else ''
    (directory / 'nginx.conf').write_text(NGINX.format(directory=directory, user=user))
    with process(directory, program, '-p', directory, '-c', directory / 'nginx.conf') as running:
        waiting_for(directory, running, lambda output: (directory / 'pid').exists() and (
            directory / 'socket').exists())
        through = through_unix_socket(str(directory / 'socket'))
        yield 'http://nginx.test', {'get_connection': through}
        # Otherwise the worker would outlive it.
        running.terminate()
        running.wait()


@contextlib.contextmanager
def program(package, script, directory):
    pytest.importorskip(package)
    with process(directory, sys.executable, '-c', script, directory / 'files',
                 env={**os.environ, 'PYTHONUNBUFFERED': '1'}) as running:
        match = waiting_for(directory, running, lambda output: re.search(
            r'running on (http://\S+) ', output, re.IGNORECASE))
        yield match[1], {}


SERVERS = {
    'nginx': nginx,
    'Starlette': lambda directory: program('starlette', STARLETTE, directory),
    'aiohttp': lambda directory: program('aiohttp', AIOHTTP, directory),
}


@pytest.fixture(scope='module')
def started(tmp_path_factory):
    """A function: from a name to what runs under it."""
    running = {}
    with contextlib.ExitStack() as stack:
        def start(name):
            if name not in running:
                directory = tmp_path_factory.mktemp(name, numbered=False)
                (directory / 'files').mkdir()
                running[name] = (*stack.enter_context(SERVERS[name](directory)),
                                 directory / 'files')
            return running[name]

        yield start


def put(path, content, age):
    """A file that is so many seconds old."""
    path.write_bytes(content)
    path.chmod(0o644)
    when = time.time() - age
    os.utime(path, (when, when))


class Enough(Exception):
    """What ends a download before its end."""


def stop(done, total):
    raise Enough


# Server and folder, and whether a download goes on.
PLACES = [
    ('nginx', '/', True),
    ('nginx', '/dates/', True),
    ('nginx', '/no-ranges/', False),
    ('nginx', '/compressed/', True),
    ('Starlette', '/', True),
    ('Starlette', '/response/', True),
    ('aiohttp', '/', True),
]


@pytest.mark.parametrize('parallel', [1, 3])
@pytest.mark.parametrize('server, folder, goes_on', PLACES)
@on_loops
async def test_a_download_goes_on_and_notices_a_change(
        server, folder, goes_on, parallel, started, tmp_path):
    url, options, files = started(server)
    path = tmp_path / 'file'
    arguments = {'parallel': parallel, 'part_size': 100_000, 'pauses': (0,)}
    async with pool(recv_bufsize=10_000, **options) as request:
        for content, resumes in ((OLD, goes_on), (NEW, False)):
            put(files / 'file', OLD, 1000)
            with pytest.raises(Enough):
                await download(request, f'{url}{folder}file', path, on_progress=stop, **arguments)
            if content is NEW:
                put(files / 'file', content, 500)
            done = await download(request, f'{url}{folder}file', path, **arguments)
            assert (path.read_bytes(), done.resumed_from > 0) == (content, resumes)
            assert [each.name for each in tmp_path.iterdir()] == ['file']


@pytest.mark.parametrize('server', SERVERS)
@on_loops
async def test_a_file_of_which_all_is_there(server, started, tmp_path):
    url, options, files = started(server)
    path = tmp_path / 'file'
    put(files / 'file', OLD, 1000)

    def stop_at_end(done, total):
        if done == total:
            raise Enough

    async with pool(**options) as request:
        with pytest.raises(Enough):
            await download(request, f'{url}/file', path, on_progress=stop_at_end)
        done = await download(request, f'{url}/file', path)
        assert (done.resumed_from, path.read_bytes()) == (len(OLD), OLD)


@pytest.mark.parametrize('parallel', [1, 2])
@pytest.mark.parametrize('server', SERVERS)
@on_loops
async def test_an_empty_file_and_a_missing_one(server, parallel, started, tmp_path):
    url, options, files = started(server)
    put(files / 'empty', b'', 1000)
    async with pool(**options) as request:
        await download(request, f'{url}/empty', tmp_path / 'file', parallel=parallel)
        assert (tmp_path / 'file').read_bytes() == b''
        with pytest.raises(DownloadStatusError, match='the server answered 404'):
            await download(request, f'{url}/missing', tmp_path / 'other', parallel=parallel)


@on_loops
async def test_what_nginx_says_of_a_file_that_has_just_changed(started, tmp_path):
    """Without an etag, a date that is too new is nothing to go on from."""
    url, options, files = started('nginx')
    put(files / 'new', OLD, 30)
    async with pool(recv_bufsize=10_000, **options) as request:
        with pytest.raises(Enough):
            await download(request, f'{url}/dates/new', tmp_path / 'file', on_progress=stop)
    assert list(tmp_path.iterdir()) == []
