"""The waterfall of real requests to nginx, and what others make of its files: a validator of HAR,
haralyzer, Chromium, and the network panel of Chromium's developer tools.

Chromium is driven by its DevTools protocol, over a WebSocket of lowhaio.
"""

import asyncio
import contextlib
import fcntl
import functools
import grp
import json
import os
import pathlib
import pwd
import re
import shutil
import socket
import subprocess
import sys

import pytest
import trustme

from lowhaio import Pool, buffered
from lowhaio_websocket import websocket

ROOT = pathlib.Path(__file__).parents[2]
LAYERS = [ROOT / 'layers' / name for name in ('redirect', 'retry', 'waterfall')]

PATIENCE = 60
HAR_VALIDATOR = '5.1.5'

NGINX_CONF = """
user {user} {group};
daemon off;
pid {root}/nginx.pid;
error_log stderr;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {root}/body;
    proxy_temp_path {root}/proxy;
    fastcgi_temp_path {root}/fastcgi;
    scgi_temp_path {root}/scgi;
    uwsgi_temp_path {root}/uwsgi;
    types {{ text/plain txt; image/png png; }}
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {root}/server.pem;
        ssl_certificate_key {root}/server.pem;
        ssl_session_cache shared:sessions:1m;
        root {root}/www;
        location = /old {{ return 302 /file.txt?token=hunter2; }}
        location = /gone {{ return 410; }}
        location = /drop {{ return 444; }}
    }}
}}
"""


def installed(program):
    """The path of a program, or a skipped test."""
    path = shutil.which(program, path=f'{os.environ.get("PATH", "")}:/usr/sbin')
    if path is None:
        pytest.skip(f'{program} is not installed')
    return path


@pytest.fixture(scope='module')
def nginx(tmp_path_factory):
    """Its origin, and the file with the authority that it has its certificate from."""
    program, root = installed('nginx'), tmp_path_factory.mktemp('nginx')
    authority = trustme.CA()
    authority.cert_pem.write_to_path(root / 'ca.pem')
    authority.issue_cert('localhost').private_key_and_cert_chain_pem.write_to_path(
        root / 'server.pem')
    (root / 'www').mkdir()
    (root / 'www' / 'file.txt').write_text('Zoë ' * 50_000)
    (root / 'www' / 'picture.png').write_bytes(bytes(range(256)))
    # Nginx takes over a socket that listens, so nobody else can get its port in between.
    with socket.create_server(('127.0.0.1', 0)) as listener:
        port = listener.getsockname()[1]
        (root / 'nginx.conf').write_text(NGINX_CONF.format(
            root=root, port=port, user=pwd.getpwuid(os.geteuid()).pw_name,
            group=grp.getgrgid(os.getegid()).gr_name))
        process = subprocess.Popen(
            [program, '-p', root, '-c', root / 'nginx.conf', '-e', 'stderr'],
            env={**os.environ, 'NGINX': f'{listener.fileno()};'}, pass_fds=[listener.fileno()])
    try:
        yield f'https://localhost:{port}', root / 'ca.pem'
    finally:
        process.terminate()
        process.wait()


def waterfall(nginx, *arguments):
    """What the command prints, and its exit status."""
    _, ca = nginx
    ended = subprocess.run(
        [sys.executable, '-W', 'error', '-m', 'lowhaio_waterfall', '--cacert', ca,
         '--max-time', str(PATIENCE), *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=2 * PATIENCE,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, (ROOT, *LAYERS))),
             'COLUMNS': '100'})
    assert ended.stderr == ''
    return ended.stdout, ended.returncode


@pytest.fixture(scope='module')
def files(nginx, tmp_path_factory):
    """A HAR file and a page of requests of all kinds."""
    origin, _ = nginx
    folder = tmp_path_factory.mktemp('files')
    _, status = waterfall(
        nginx, *(f'{origin}{path}' for path in (
            '/file.txt', '/picture.png', '/old', '/gone', '/drop')),
        '-L', '--repeat', 5, '--parallel', 3, '--max-connections', 2, '-d', 'a=b', '-X', 'GET',
        '-H', 'cookie: a=hunter2', '--har', folder / 'a.har', '--har-content', '--html',
        folder / 'a.html')
    assert status == 1
    return folder / 'a.har', folder / 'a.html'


def test_a_session_of_tls_that_is_resumed_is_told(nginx):
    origin, _ = nginx
    printed, status = waterfall(nginx, f'{origin}/picture.png', '--json', '--repeat', 2,
                                '-H', 'connection: close')
    assert status == 0
    first, second = map(json.loads, printed.splitlines())
    assert (first['tls']['resumed'], second['tls']['resumed']) == (False, True)
    assert [each['connection']['request'] for each in (first, second)] == [1, 1]
    assert {phase['name'] for phase in first['phases']} >= {'lookup', 'connect', 'tls', 'wait'}
    assert first['received']['body'] == 256


def test_a_redirect_is_shown_with_both_of_its_requests(nginx):
    origin, _ = nginx
    printed, status = waterfall(nginx, '-L', f'{origin}/old')
    assert status == 0
    assert re.findall(r'^GET (\S+)$', printed, re.MULTILINE) == [
        f'{origin}/old', f'{origin}/file.txt?token=REDACTED']
    assert 'its request 2' in printed
    assert 'hunter2' not in printed


# ------------------------------------------------------------------------------------ the HAR


def har_validator(folder):
    """The folder in which npm has installed it."""
    npm = installed('npm')
    with open(folder / 'lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / 'done').exists():
            ended = subprocess.run(
                [npm, 'install', '--no-audit', '--no-fund', '--ignore-scripts',
                 '--prefer-offline', '--prefix', folder, f'har-validator@{HAR_VALIDATOR}'],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
                check=False)
            if ended.returncode != 0:
                assert os.environ.get('CI') != 'true', ended.stdout
                pytest.skip(f'npm could not install har-validator: {ended.stdout[-200:]}')
            (folder / 'done').touch()
    return folder


def test_the_har_is_valid(files, pytestconfig):
    folder = har_validator(pytestconfig.cache.mkdir(f'har-validator-{HAR_VALIDATOR}'))
    script = """
        const har = JSON.parse(require('fs').readFileSync(process.argv[1]));
        require('har-validator').har(har).then(
            () => console.log('valid'), (error) => console.log(JSON.stringify(error.errors)));
    """
    ended = subprocess.run(
        [installed('node'), '-e', script, files[0]], stdout=subprocess.PIPE, text=True,
        check=True, timeout=PATIENCE,
        env={**os.environ, 'NODE_PATH': str(folder / 'node_modules')})
    assert ended.stdout == 'valid\n'


def test_the_times_of_the_har_add_up(files):
    entries = json.loads(files[0].read_text())['log']['entries']
    assert len(entries) == 30
    for entry in entries:
        times = {name: time for name, time in entry['timings'].items() if time != -1}
        assert all(time >= 0 for time in times.values())
        assert sum(times.values()) - times.get('ssl', 0) == pytest.approx(entry['time'], abs=0.001)
        assert times.get('ssl', 0) <= times.get('connect', 0)
    texts = {entry['response']['content'].get('encoding'): entry['response']['content']['text']
             for entry in entries if entry['response']['status'] == 200}
    assert texts[None] == 'Zoë ' * 50_000
    assert texts['base64'].startswith('AAECAwQ')
    assert 'hunter2' not in files[0].read_text()


def test_haralyzer_reads_the_har(files):
    haralyzer = pytest.importorskip('haralyzer')
    entries = haralyzer.HarParser(json.loads(files[0].read_text())).har_data['entries']
    read = [haralyzer.assets.HarEntry(entry) for entry in entries]
    assert {entry.status for entry in read} == {0, 200, 302, 410}
    assert all(entry.startTime.tzinfo is not None for entry in read)
    assert {entry.serverAddress for entry in read} == {'127.0.0.1'}


# ---------------------------------------------------------------------------------- Chromium


class Tab:
    """A tab of Chromium, by https://chromedevtools.github.io/devtools-protocol/"""

    def __init__(self, ws):
        self.ws = ws
        self.number = 0
        self.events = []

    async def call(self, method, **params):
        self.number += 1
        await self.ws.send(json.dumps({'id': self.number, 'method': method, 'params': params}))
        while (message := json.loads(await self.ws.receive())).get('id') != self.number:
            self.events.append(message)
        assert 'error' not in message, message
        return message['result']

    async def evaluate(self, script):
        """The value of an expression, or of its promise."""
        result = await self.call('Runtime.evaluate', expression=script, awaitPromise=True,
                                 returnByValue=True)
        assert 'exceptionDetails' not in result, result
        return result['result'].get('value')

    async def until(self, script):
        """Wait until an expression is true. That it can not be evaluated yet is no matter."""
        while not await self.evaluate(f'(async () => {script})().catch(() => false)'):
            await asyncio.sleep(0.05)

    async def show(self, width, scheme):
        await self.call('Emulation.setDeviceMetricsOverride', width=width, height=800,
                        deviceScaleFactor=1, mobile=width < 640)
        await self.call('Emulation.setEmulatedMedia', features=[
            {'name': 'prefers-color-scheme', 'value': scheme}])

    def complaints(self):
        """What was logged to the console, and which requests were made to the network."""
        return [event for event in self.events if event['method'] in (
            'Log.entryAdded', 'Runtime.exceptionThrown', 'Runtime.consoleAPICalled')
            or event['method'] == 'Network.requestWillBeSent'
            and not event['params']['request']['url'].startswith('file:')]


@contextlib.asynccontextmanager
async def chromium(url, folder):
    process = subprocess.Popen(
        [installed('chromium'), '--headless', '--no-sandbox', '--disable-gpu',
         '--remote-debugging-port=0', f'--user-data-dir={folder}', 'about:blank'],
        stderr=subprocess.PIPE, text=True)
    request, close = Pool()
    try:
        origin = f'http://127.0.0.1:{port_of(process)}'
        _, _, body = await request(b'PUT', f'{origin}/json/new?{url}',
                                   headers=((b'content-length', b'0'),))
        target = json.loads(await buffered(body))
        async with websocket(request, target['webSocketDebuggerUrl'], max_message=None) as ws:
            tab = Tab(ws)
            for domain in 'Page', 'Runtime', 'Log', 'Network':
                await tab.call(f'{domain}.enable')
            # From its begin, so that what is logged there is seen, too.
            await tab.call('Page.reload')
            await tab.until('{ return document.readyState === "complete"; }')
            yield tab
    finally:
        process.kill()
        process.communicate()
        await close()


def port_of(process):
    """The port of Chromium's protocol, which it tells once it listens."""
    for line in process.stderr:
        if match := re.search(r'ws://127\.0\.0\.1:(\d+)/', line):
            return int(match[1])
    raise AssertionError('chromium has ended')


def in_time(test):
    """Run an async test, which fails if it hangs."""
    @functools.wraps(test)
    def wrapper(**kwargs):
        async def run():
            async with asyncio.timeout(PATIENCE):
                await test(**kwargs)

        asyncio.run(run())

    return wrapper


ORDER = 'Array.from(document.querySelectorAll("ol > li"), (each) => Number(each.dataset.%s))'


@in_time
async def test_chromium_shows_the_page(files, tmp_path):
    async with chromium(f'file://{files[1]}', tmp_path) as tab:
        assert await tab.evaluate('document.querySelectorAll("ol > li").length') == 30
        for scheme in 'light', 'dark':
            for width in 1280, 390:
                await tab.show(width, scheme)
                assert await tab.evaluate('document.documentElement.scrollWidth') <= width
        starts = await tab.evaluate(ORDER % 'start')
        assert starts == sorted(starts)
        for is_longest_first in True, False:
            await tab.evaluate('document.querySelector("[data-sort=duration]").click()')
            durations = await tab.evaluate(ORDER % 'duration')
            assert durations == sorted(durations, reverse=is_longest_first)
        assert await tab.evaluate(
            'document.querySelector("[aria-pressed=true]").textContent') == 'Duration ↑'
        await tab.evaluate('document.querySelector("summary").click()')
        assert await tab.evaluate('document.querySelector("details[open] table").offsetHeight') > 0
        assert 'hunter2' not in await tab.evaluate('document.documentElement.outerHTML')
        assert tab.complaints() == []


@in_time
async def test_what_is_under_the_mouse_is_told(files, tmp_path):
    async with chromium(f'file://{files[1]}', tmp_path) as tab:
        await tab.show(1280, 'light')
        x, y = await tab.evaluate('(() => { const box = document.querySelectorAll("summary")[2]'
                                  '.getBoundingClientRect(); return [box.x + 9, box.y + 9]; })()')
        await tab.call('Input.dispatchMouseEvent', type='mouseMoved', x=x, y=y)
        await tab.until('{ return document.getElementById("tip").offsetHeight > 0; }')
        assert '/' in await tab.evaluate('document.querySelector("#tip p").textContent')
        assert await tab.evaluate('document.querySelector("#tip p").textContent') == \
            await tab.evaluate('document.querySelectorAll("ol .more")[2].firstChild.textContent')
        await tab.call('Input.dispatchMouseEvent', type='mouseMoved', x=1, y=1)
        await tab.until('{ return document.getElementById("tip").offsetHeight === 0; }')


@in_time
async def test_the_network_panel_of_chromium_imports_the_har(files, tmp_path):
    async with chromium('devtools://devtools/bundled/devtools_app.html', tmp_path) as tab:
        load = """{
            const base = 'devtools://devtools/bundled/';
            const ui = await import(base + 'ui/legacy/legacy.js');
            await ui.ViewManager.ViewManager.instance().showView('network');
            const { NetworkPanel } = await import(base + 'panels/network/network.js');
            const { NetworkLog } = await import(base + 'models/logs/logs.js');
            window.view = NetworkPanel.NetworkPanel.instance().networkLogView;
            window.log = NetworkLog.NetworkLog.instance();
            return true;
        }"""
        await tab.until(load)
        har = json.dumps(files[0].read_text())
        await tab.evaluate(f'view.onLoadFromFile(new File([{har}], "a.har")).then(() => 0)')
        await tab.until('{ return log.requests().length === 30; }')
        shown = json.loads(await tab.evaluate("""JSON.stringify(log.requests().map((each) => [
            new URL(each.url()).pathname, each.statusCode, each.duration, each.resourceSize]))"""))
    entries = json.loads(files[0].read_text())['log']['entries']
    assert [(path, status, size) for path, status, _, size in shown] == [
        (re.sub(r'^https://[^/]*|\?.*', '', entry['request']['url']), entry['response']['status'],
         entry['response']['content']['size']) for entry in entries]
    assert [1000 * duration for _, _, duration, _ in shown] == pytest.approx(
        [entry['time'] for entry in entries], abs=0.01)
