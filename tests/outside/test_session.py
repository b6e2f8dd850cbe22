"""Sessions against servers of others: FastAPI under uvicorn, which parses forms by
python-multipart, and nginx."""

import asyncio
import contextlib
import grp
import gzip
import io
import os
import pathlib
import pwd
import shutil
import socket
import subprocess
import threading
import time
from typing import Annotated

import pytest

from lowhaio import HttpDataError
from lowhaio_session import Session, StatusError

fastapi = pytest.importorskip('fastapi', reason='needs fastapi')
uvicorn = pytest.importorskip('uvicorn', reason='needs uvicorn')
pytest.importorskip('python_multipart', reason='needs python-multipart')

NGINX = shutil.which('nginx') or shutil.which('/usr/sbin/nginx')


def application():
    app = fastapi.FastAPI()

    @app.post('/json')
    async def echo(document: Annotated[dict, fastapi.Body()]):
        return document

    @app.post('/form')
    async def form(name: Annotated[str, fastapi.Form()],
                   tag: Annotated[list[str], fastapi.Form()]):
        return {'name': name, 'tag': tag}

    @app.post('/files')
    async def files(title: Annotated[str, fastapi.Form()],
                    files: Annotated[list[fastapi.UploadFile], fastapi.File()]):
        return [title, *[[file.filename, file.content_type, len(await file.read())]
                         for file in files]]

    @app.put('/there')
    async def there(request: fastapi.Request):
        return {'length': len(await request.body()),
                'authorization': request.headers.get('authorization')}

    @app.put('/moved')
    async def moved(request: fastapi.Request):
        await request.body()
        return fastapi.Response(status_code=307, headers={'location': '/there'})

    @app.get('/query')
    async def query(request: fastapi.Request):
        return request.query_params.multi_items()

    @app.get('/latin')
    async def latin():
        return fastapi.Response('Zoë'.encode('latin-1'), media_type='text/plain; charset=latin-1')

    @app.get('/lines')
    async def lines():
        return fastapi.responses.StreamingResponse(
            (f'line {number}\n' for number in range(3)), media_type='text/plain')

    @app.get('/slow')
    async def slow():
        await asyncio.sleep(60)

    return app


@pytest.fixture(scope='module')
def origin():
    with socket.create_server(('127.0.0.1', 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(
            application(), log_level='error', lifespan='off', timeout_graceful_shutdown=0))
        thread = threading.Thread(target=server.run, kwargs={'sockets': [listener]})
        thread.start()
        yield f'http://127.0.0.1:{listener.getsockname()[1]}'
        server.should_exit = True
        thread.join()


def test_what_fastapi_makes_of_it(origin, tmp_path):
    path = tmp_path / 'Zoë "1".txt'
    path.write_bytes(bytes(200_000))

    async def main():
        async with Session(origin, auth='token') as http:
            document = {'title': 'Zoë', 'tags': [1, None, 1.5]}
            assert await (await http.post('/json', json=document)).json() == document
            form = {'name': 'Zoë & Co', 'tag': ['a', 'b']}
            assert await (await http.post('/form', data=form)).json() == form
            answer = await http.post('/files', data={'title': 'Zoë'}, files=[
                ('files', path), ('files', b'ab'), ('files', ('ü.png', io.BytesIO(b'abc')))])
            assert await answer.json() == [
                # It leaves a quote as browsers send it.
                'Zoë', ['Zoë %221%22.txt', 'text/plain', 200_000],
                ['blob', 'application/octet-stream', 2], ['ü.png', 'image/png', 3]]
            with open(path, 'rb') as file:
                answer = await http.put('/moved', content=file)
            assert await answer.json() == {'length': 200_000, 'authorization': 'Bearer token'}
            assert (answer.url, answer.history[0].code) == (f'{origin}/there', b'307')
            answer = await http.get('/query?a=1', params={'b': ['2', 'ë'], 'c': 'x y'})
            assert await answer.json() == [['a', '1'], ['b', '2'], ['b', 'ë'], ['c', 'x y']]
            assert await (await http.get('/latin')).text() == 'Zoë'
            async with http.stream('GET', '/lines') as answer:
                assert b''.join([chunk async for chunk in answer]) == b'line 0\nline 1\nline 2\n'
            with pytest.raises(StatusError, match=r'422 .*Field required') as caught:
                (await http.post('/form', data={'name': 'a'})).raise_for_status()
            assert (await caught.value.response.json())['detail'][0]['loc'] == ['body', 'tag']
            with pytest.raises(HttpDataError, match=r'timeout, 0\.05 seconds, passed$'):
                await http.get('/slow', timeout=0.05)

    asyncio.run(main())


CONFIGURATION = '''\
user {user} {group};
daemon off;
pid {root}/nginx.pid;
error_log {root}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {root}/body;
    proxy_temp_path {root}/proxy;
    fastcgi_temp_path {root}/fastcgi;
    scgi_temp_path {root}/scgi;
    uwsgi_temp_path {root}/uwsgi;
    gzip on;
    gzip_types text/plain;
    server {{
        listen unix:{root}/socket;
        root {root}/files;
        location /moved {{ return 301 /text.txt; }}
        location /refused {{ client_max_body_size 10; return 204; }}
        location /secret {{ if ($http_authorization = '') {{ return 401; }} return 204; }}
    }}
}}
'''


@contextlib.contextmanager
def nginx(root):
    """A `get_connection` to it, over a unix socket, so that no port has to be free."""
    files = root / 'files'
    files.mkdir()
    (files / 'text.txt').write_bytes(b'a line\n' * 10_000)
    user, group = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(os.getgid()).gr_name
    (root / 'nginx.conf').write_text(CONFIGURATION.format(root=root, user=user, group=group))
    process = subprocess.Popen([NGINX, '-p', root, '-c', root / 'nginx.conf', '-e',
                                root / 'error.log'], stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while not (root / 'nginx.pid').exists() or not (root / 'socket').exists():
            assert process.poll() is None, (root / 'error.log').read_text()
            assert time.monotonic() < end
            time.sleep(0.01)

        async def get_connection(scheme, host, port):
            sock = socket.socket(socket.AF_UNIX)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, str(root / 'socket'))
            return sock

        yield get_connection
    finally:
        process.terminate()
        process.wait()


@pytest.mark.skipif(NGINX is None, reason='needs nginx')
def test_nginx(tmp_path_factory):
    async def main(get_connection):
        async with Session('http://nginx.test', auth=('user', 'password'), max_connections=2,
                           get_connection=get_connection) as http:
            answer = await http.get('/moved')
            assert await answer.bytes() == b'a line\n' * 10_000
            assert answer.url == 'http://nginx.test/text.txt'
            # nginx has compressed it, which nobody needs to know.
            assert 'content-encoding' not in answer.headers
            assert answer.headers['Server'].startswith('nginx')
            with pytest.raises(StatusError, match='404 Not Found'):
                (await http.get('/none')).raise_for_status()
            assert (await http.post('/refused', content=bytes(1_000_000))).status == 413
            assert (await http.get('/secret')).status == 204
            async with http.stream('GET', '/text.txt') as answer:
                assert (await anext(aiter(answer))).startswith(b'a line')
            assert (await asyncio.gather(*(http.head('/text.txt') for _ in range(10))))[9].status \
                == 200
        async with Session('http://nginx.test', get_connection=get_connection,
                           decompress=False) as http:
            answer = await http.get('/text.txt', headers={'Accept-Encoding': 'gzip'})
            assert gzip.decompress(await answer.bytes()) == b'a line\n' * 10_000
            assert (await http.get('/secret')).status == 401

    root = pathlib.Path(tmp_path_factory.mktemp('nginx'))
    with nginx(root) as get_connection:
        asyncio.run(main(get_connection))
