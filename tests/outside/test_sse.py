"""lowhaio_sse against the servers that people run, and beside other readers of the same format.

The application is FastAPI's, under uvicorn, by itself and behind nginx. It sends an event only
when the last one has been confirmed by another request, so one that is held back is noticed.
"""

import asyncio
import contextlib
import http.server
import importlib.util
import json
import pathlib
import shutil
import socket
import subprocess
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowhaio import Pool, buffered
from lowhaio_compression import decompressed
from lowhaio_sse import Parser, events

fastapi = pytest.importorskip('fastapi')
uvicorn = pytest.importorskip('uvicorn')

# So that a hang is a failure. Nothing waits for it to pass.
PATIENCE = 60


# ------------------------------------------------------------------------------- real servers

def application():
    app = fastapi.FastAPI()
    confirmed = {}

    async def numbers(name):
        queue = confirmed.setdefault(name, asyncio.Queue())
        for number in range(5):
            yield number
            await queue.get()

    @app.get('/confirm/{name}')
    async def confirm(name):
        confirmed[name].put_nowait(None)
        return fastapi.Response()

    @app.get('/plain/{name}')
    async def plain(name):
        async def content():
            async for number in numbers(name):
                yield f': a comment\nid: {number}\ndata: line\ndata: {number} \xe9\n\n'

        return fastapi.responses.StreamingResponse(content(), media_type='text/event-stream')

    @app.get('/sse_starlette/{name}')
    async def by_sse_starlette(name):
        async def content():
            async for number in numbers(name):
                yield {'id': str(number), 'data': f'line\n{number} \xe9', 'retry': 10}

        return sse_starlette.EventSourceResponse(content())

    @app.get('/ending')
    async def ending(request: fastapi.Request):
        last = int(request.headers.get('last-event-id', '0'))
        if last == 3:
            return fastapi.Response(status_code=204)
        return fastapi.responses.StreamingResponse(
            iter([f'retry: 0\nid: {last + 1}\ndata: {last}\n\n']), media_type='text/event-stream')

    return app


try:
    import sse_starlette
except ImportError:
    sse_starlette = None

ROUTES = ['plain', pytest.param('sse_starlette', marks=pytest.mark.skipif(
    sse_starlette is None, reason='sse-starlette is not installed'))]


def listener():
    sock = socket.socket()
    sock.bind(('127.0.0.1', 0))
    sock.listen()
    return sock


@pytest.fixture(scope='module')
def origin():
    sock = listener()
    server = uvicorn.Server(uvicorn.Config(application(), log_level='error', lifespan='off'))
    thread = threading.Thread(target=server.run, kwargs={'sockets': [sock]})
    thread.start()
    yield f'http://127.0.0.1:{sock.getsockname()[1]}'
    server.should_exit = True
    thread.join()


NGINX = """
daemon off;
worker_processes 1;
pid {directory}/pid;
error_log stderr error;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen unix:{directory}/socket;
        gzip on;
        gzip_types text/event-stream;
        gzip_proxied any;
        location / {{
            proxy_pass {origin};
            proxy_http_version 1.1;
            proxy_set_header connection '';
            proxy_buffering off;
        }}
    }}
}}
"""


@pytest.fixture(scope='module')
def nginx(origin, tmp_path_factory):
    """The path of a unix socket, so that there is no port to lose to somebody else."""
    command = shutil.which('nginx', path='/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin')
    if command is None:
        pytest.skip('nginx is not installed')
    directory = tmp_path_factory.mktemp('nginx')
    (directory / 'conf').write_text(NGINX.format(directory=directory, origin=origin))
    with subprocess.Popen([command, '-p', directory, '-c', directory / 'conf']) as process:
        try:
            asyncio.run(accepting(str(directory / 'socket'), process))
            yield str(directory / 'socket')
        finally:
            process.terminate()


async def accepting(path, process):
    async with asyncio.timeout(PATIENCE):
        while True:
            assert process.poll() is None
            with contextlib.suppress(OSError):
                (await connected(path)).close()
                return
            await asyncio.sleep(0.01)


async def connected(path):
    sock = socket.socket(socket.AF_UNIX)
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, path)
    except BaseException:
        sock.close()
        raise
    return sock


def run(test, **options):
    async def main():
        request, close = Pool(**options)
        async with asyncio.timeout(PATIENCE):
            try:
                await test(request)
            finally:
                await close()

    asyncio.run(main())


async def confirm_each(request, layered, origin, route, name):
    """Read five events, and confirm each."""
    async with events(layered, f'{origin}/{route}/{name}', reconnects=False) as stream:
        came = []
        async for event in stream:
            came.append(event)
            await buffered((await request(b'GET', f'{origin}/confirm/{name}'))[2])
    assert came == [('message', f'line\n{number} \xe9', str(number)) for number in range(5)]


@pytest.mark.parametrize('route', ROUTES)
def test_each_event_comes_at_once(origin, route):
    async def main(request):
        await confirm_each(request, request, origin, route, f'{route}-direct')

    run(main)


@pytest.mark.parametrize('route', ROUTES)
def test_each_event_comes_at_once_through_nginx_and_gzip(nginx, route):
    async def main(request):
        async def noted(*args, **kwargs):
            response = await request(*args, **kwargs)
            fields.append(dict(response[1]))
            return response

        fields = []
        await confirm_each(request, decompressed(noted), 'http://name.test', route,
                           f'{route}-nginx')
        assert fields[0][b'content-encoding'] == b'gzip'
        assert b'nginx' in fields[0][b'server']

    run(main, get_connection=lambda scheme, host, port: connected(nginx))


def test_it_goes_on_until_the_application_says_no(origin):
    async def main(request):
        came = [event async for event in events(request, f'{origin}/ending')]
        assert came == [('message', str(number - 1), str(number)) for number in (1, 2, 3)]

    run(main)


# ------------------------------------------------------------------------------ other readers
#
# They differ on the rest: on blocks without data, on a lone CR, on what `retry` may hold, on a
# last block without an end, and on what is no UTF-8.

TEXTS = st.text(st.characters(
    exclude_categories=['Cs', 'Cc'], exclude_characters='\x85\u2028\u2029'), max_size=20)
NAMES = st.text('abcdefgh-_', min_size=1, max_size=10)
BLOCKS = st.lists(st.tuples(
    st.lists(TEXTS, min_size=1, max_size=3), NAMES | st.none(), NAMES | st.none(),
    st.booleans()), max_size=5)


def written(blocks, end):
    for data, kind, event_id, has_comment in blocks:
        if has_comment:
            yield ': a comment'
        if kind is not None:
            yield f'event: {kind}'
        if event_id is not None:
            yield f'id: {event_id}'
        for line in data:
            yield f'data: {line}'
        yield ''


def by_httpx_sse(content):
    httpx, httpx_sse = pytest.importorskip('httpx'), pytest.importorskip('httpx_sse')
    source = httpx_sse.EventSource(httpx.Response(
        200, headers={'content-type': 'text/event-stream'}, content=content,
        request=httpx.Request('GET', 'http://name.test/')))
    return [(event.event, event.data, event.id) for event in source.iter_sse()]


def by_httpx2(content):
    httpx2 = pytest.importorskip('httpx2')
    source = httpx2.EventSource(httpx2.Response(
        200, headers={'content-type': 'text/event-stream'}, content=content,
        request=httpx2.Request('GET', 'http://name.test/')))
    return [(event.event, event.data, event.id) for event in source]


def by_openai(content):
    streaming = pytest.importorskip('openai._streaming')
    return [(event.event or 'message', event.data, event.id or '')
            for event in streaming.SSEDecoder().iter_bytes(iter([content]))]


@pytest.mark.parametrize('reader', [by_httpx_sse, by_httpx2, by_openai])
@pytest.mark.parametrize('end', ['\n', '\r\n'], ids=['LF', 'CRLF'])
def test_others_read_the_same(reader, end):
    @settings(max_examples=100, deadline=None, database=None)
    @given(BLOCKS)
    def check(blocks):
        content = ''.join(line + end for line in written(blocks, end)).encode()
        assert list(Parser().feed(content)) == reader(content)

    check()


# ----------------------------------------------------------------------------------- a browser
#
# What a browser makes of all the streams in the table of the layer's own tests.

PAGE = """<script>
const types = ['message', 'add', 'message ', '\\ufffd', 'a']
const read = number => new Promise(done => {
    const found = [], source = new EventSource('/' + number)
    for (const type of types) source.addEventListener(
        type, event => found.push([event.type, event.data, event.lastEventId]))
    source.onerror = () => { source.close(); done(found) }
});
(async () => {
    const all = []
    for (let number = 0; number < COUNT; number++) all.push(await read(number))
    fetch('/', {method: 'POST', body: JSON.stringify(all)})
})()
</script>"""


def table():
    path = pathlib.Path(__file__).parents[2] / 'layers' / 'sse' / 'test.py'
    spec = importlib.util.spec_from_file_location('tests_of_sse', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [(name, module.in_bytes(content), expected)
            for name, (content, expected) in module.STREAMS.items()]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        is_stream = self.path[1:].isdigit()
        self.send_response(200)
        self.send_header('content-type', 'text/event-stream' if is_stream else 'text/html')
        self.end_headers()
        self.wfile.write(self.server.streams[int(self.path[1:])] if is_stream else
                         PAGE.replace('COUNT', str(len(self.server.streams))).encode())

    def do_POST(self):
        self.server.found = json.loads(self.rfile.read(int(self.headers['content-length'])))
        self.send_response(200)
        self.end_headers()
        self.server.is_done.set()

    def log_message(self, *args):
        pass


def test_a_browser_reads_the_same(tmp_path):
    command = shutil.which('chromium')
    if command is None:
        pytest.skip('chromium is not installed')
    names, streams, expected = zip(*table(), strict=True)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        server.streams, server.is_done = streams, threading.Event()
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        with subprocess.Popen([
                command, '--headless', '--no-sandbox', '--disable-gpu',
                f'--user-data-dir={tmp_path}', f'http://127.0.0.1:{server.server_port}/page'],
                stderr=subprocess.DEVNULL) as process:
            try:
                assert server.is_done.wait(PATIENCE)
            finally:
                process.terminate()
                server.shutdown()
                thread.join()
    assert {name: [tuple(event) for event in found] for name, found in zip(
        names, server.found, strict=True)} == dict(zip(names, expected, strict=True))
