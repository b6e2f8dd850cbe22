"""Tests of README.md and of the pages of docs/: each block of Python runs as it stands, each link
leads somewhere, and the recipes keep their word when something goes wrong.

In the first part www.example.com is a server in a thread, and what a block prints and asks for is
in a table. In the second one the functions of the recipes are called, on both loops, and servers
are scripted in bytes.
"""

import ast
import asyncio
import contextlib
import email.message
import functools
import gzip
import http.server
import importlib
import inspect
import io
import ipaddress
import logging
import os
import pathlib
import re
import runpy
import signal
import socket
import ssl
import sys
import threading
import types
from typing import NamedTuple

import aiodnsresolver
import pytest
import trustme

import lowhaio
from lowhaio import (
    HttpConnectionError,
    HttpDataError,
    HttpError,
    Pool,
    buffered,
    empty_async_iterator,
    streamed,
)
from lowhaio_redirect import redirectable
from lowhaio_retry import retry
from tests.harness import (
    OK,
    PATIENCE,
    Answering,
    Server,
    connecting_to,
    on_loops,
    pool,
    response,
    turns,
    until,
    value,
)

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / 'README.md'
PAGES = {
    path: path.read_text(encoding='utf-8')
    for path in (README, *sorted((ROOT / 'docs').rglob('*.md')))}


def blocks_of_pages():
    """Each block of Python, by the name of its page, and its number if it is not the first."""
    blocks = {}
    for path, text in PAGES.items():
        name = path.relative_to(README.parent if path == README else ROOT / 'docs').with_suffix('')
        found = re.findall(r'(?<=^```python\n).*?(?=^```$)', text, re.MULTILINE | re.DOTALL)
        for number, block in enumerate(found, 1):
            blocks[f'{name}-{number}' if number > 1 else str(name)] = block
    return blocks


BLOCKS = blocks_of_pages()


# ------------------------------------------------------------------- each block as it stands


class Asked(NamedTuple):
    method: str
    path: str
    content: bytes
    fields: email.message.Message
    is_tls: bool
    client: str | None  # the name in its certificate
    before: int  # how often this path was asked for before


class Website(http.server.BaseHTTPRequestHandler):
    """What www.example.com is for the pages. It answers with what it was sent, unless ANSWERS
    has a function for the path."""

    protocol_version = 'HTTP/1.1'

    def answer(self):
        path = self.path.partition('?')[0]
        is_tls = isinstance(self.connection, ssl.SSLSocket)
        certificate = self.connection.getpeercert() if is_tls else None
        asked = Asked(
            self.command, self.path, self.read_content(), self.headers, is_tls,
            certificate['subjectAltName'][0][1] if certificate else None,
            [one.path.partition('?')[0] for one in self.server.asked].count(path))
        self.server.asked.append(asked)
        code, fields, content = ANSWERS.get(path, hello)(asked)
        self.send_response_only(code)
        for name, text in {'content-length': str(len(content)), **fields}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = answer

    def read_content(self):
        """Decoded, and with the boundary of its parts, which is random, as BOUNDARY."""
        if self.headers['transfer-encoding'] == 'chunked':
            content = b''
            while length := int(self.rfile.readline(), 16):
                content += self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
        else:
            content = self.rfile.read(int(self.headers['content-length'] or 0))
        if self.headers['content-encoding'] == 'gzip':
            content = gzip.decompress(content)
        boundary = self.headers.get_param('boundary')
        return content.replace(boundary.encode(), b'BOUNDARY') if boundary else content

    def log_message(self, *args):
        pass


def hello(asked):
    return 200, {'content-type': 'text/html'}, b'<p>Hello</p>' + asked.content


def documents(asked):
    return 201, {'content-type': 'application/json'}, asked.content.replace(b'{', b'{"id": 7, ')


def missing(asked):
    return 404, {'content-type': 'text/html'}, b'<p>Missing</p>'


def archive(asked):
    """1000 bytes, of which the first 400 are the first answer, which is cut off. The last of these
    is asked for again."""
    if not asked.before:
        return 200, {'etag': '"1"', 'content-length': '1000', 'connection': 'close'}, b'a' * 400
    assert (asked.fields['range'], asked.fields['if-range']) == ('bytes=399-', '"1"')
    return 206, {'etag': '"1"', 'content-range': 'bytes 399-999/1000'}, b'a' + b'b' * 600


def event_stream(asked):
    fields = {'content-type': 'text/event-stream; charset=utf-8'}
    return [
        (200, fields, b'retry: 1\n\n: hello\nid: 1\nevent: add\ndata: a\ndata: b\n\ndata: no end'),
        (200, fields, b'id: 2\ndata: c\n\n'),
        (204, {}, b''),
    ][asked.before]


def rows(asked):
    """Coded as the request is, if that accepts it."""
    if asked.fields.get('content-encoding') != 'gzip':
        return hello(asked)
    assert 'gzip' in asked.fields['accept-encoding']
    return 200, {'content-type': 'text/plain', 'content-encoding': 'gzip'}, gzip.compress(
        asked.content)


def report(asked):
    """First it has no time, and then it is somewhere else."""
    return (307, {'location': '/reports/7'}, b'') if asked.before else (503, {}, b'')


def status(asked):
    assert asked.fields['accept'] == 'application/json'
    return 200, {'content-type': 'application/json'}, b'{"up": true}'


def numbers(asked):
    """What was uploaded is what is downloaded."""
    return 200, {}, asked.content or bytes(1_000_000)


def settings(asked):
    if asked.fields['if-none-match'] == '"1"':
        return 304, {'etag': '"1"'}, b''
    return 200, {'etag': '"1"'}, b'colour = red'


def large(asked):
    return 200, {}, bytes(10_000_000)


def lines(asked):
    return 200, {'content-type': 'application/x-ndjson'}, b'{"number": 1}\n{"number": 2}'


def login(asked):
    return 200, {'set-cookie': 'session=1; Secure; HttpOnly'}, b''


def busy(asked):
    return hello(asked) if asked.before else (503, {}, b'')


def terminating(asked):
    os.kill(os.getpid(), signal.SIGTERM)
    return hello(asked)



def items(asked):
    return [
        (200, {'link': '</items?page=2>; rel="next", </items?page=9>; rel="last"'},
         b'[{"id": 1}, {"id": 2}]'),
        (200, {}, b'[{"id": 3}]'),
    ][asked.before]


ANSWERS = {
    '/items': items,
    '/documents': documents,
    '/missing': missing,
    '/archive.zip': archive,
    '/events': event_stream,
    '/rows': rows,
    '/report': report,
    '/jobs/second': terminating,
    '/status': status,
    '/numbers': numbers,
    '/settings': settings,
    '/large': large,
    '/lines': lines,
    '/login': login,
    '/busy': busy,
}


class TunnelEnd(Website):
    """An HTTP proxy, whose tunnels end where it is."""

    def do_CONNECT(self):
        self.server.tunnels.append(f'CONNECT {self.path}')
        self.send_response_only(200)
        self.end_headers()
        self.start_tls()

    def start_tls(self):
        self.request = self.server.context.wrap_socket(self.request, server_side=True)
        self.setup()

    def finish(self):
        super().finish()
        self.request.close()


class SocksTunnelEnd(TunnelEnd):
    def handle(self):
        assert self.rfile.read(3) == b'\5\1\0'
        self.wfile.write(b'\5\0')
        assert self.rfile.read(4) == b'\5\1\0\3'
        host = self.rfile.read(self.rfile.read(1)[0]).decode()
        port = int.from_bytes(self.rfile.read(2), 'big')
        self.server.tunnels.append(f'SOCKS {host}:{port}')
        self.wfile.write(b'\5\0\0\1' + bytes(6))
        self.start_tls()
        super().handle()


class WebServer(http.server.ThreadingHTTPServer):
    request_queue_size = 64
    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), OSError):
            self.failures.append(sys.exception())


class UnixServer(WebServer):
    address_family = socket.AF_UNIX

    def server_bind(self):
        self.socket.bind(self.server_address)

    def get_request(self):
        sock, _ = super().get_request()
        return sock, ('', 0)


class Site:
    """The servers of the pages, each in a thread, and what they have seen."""

    def __init__(self, context):
        self.context = context
        self.asked = []
        self.tunnels = []  # what proxies were asked for
        self.connected = []  # to which addresses, as the client knows them
        self.failures = []
        self.stack = contextlib.ExitStack()

    def start(self, kind, address, handler, is_tls=False):
        server = self.stack.enter_context(kind(address, handler))
        vars(server).update(context=self.context, asked=self.asked, tunnels=self.tunnels,
                            failures=self.failures)
        if is_tls:
            server.socket = self.context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        self.stack.callback(thread.join)
        self.stack.callback(server.shutdown)
        return server.server_address


@pytest.fixture
def site(tmp_path, monkeypatch):
    """With the names, the certificates and the working directory of the pages."""
    monkeypatch.chdir(tmp_path)
    authority = trustme.CA()
    authority.cert_pem.write_to_path('our-authority.pem')
    authority.issue_cert('client.example.com').private_key_and_cert_chain_pem.write_to_path(
        'our-certificate.pem')
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert('*.example.com').configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_OPTIONAL
    site = Site(context)
    here = ('127.0.0.1', 0)

    with site.stack:
        ports = {80: site.start(WebServer, here, Website),
                 443: site.start(WebServer, here, Website, is_tls=True)}
        proxies = {('192.0.2.1', 3128): site.start(WebServer, here, TunnelEnd),
                   ('192.0.2.1', 1080): site.start(WebServer, here, SocksTunnelEnd)}
        site.start(UnixServer, 'server.sock', Website)

        async def resolve(name, record_type, get_logger_adapter):
            if name == 'unreachable.example.com':
                raise LookupError('no such name')
            return (ipaddress.ip_address('127.0.0.1'),)

        async def clear_cache(get_logger_adapter):
            pass

        def get_dns_resolver(get_logger_adapter):
            return resolve, clear_cache

        def getaddrinfo(host, port, family, kind, proto, flags):
            return [(family, kind, proto, '', ('192.0.2.7', 0))]

        class Sock(socket.socket):
            def connect(self, address):
                site.connected.append(address)
                super().connect(ports[address[1]])

        def get_sock(family):
            sock = Sock(family)
            sock.setblocking(False)
            return sock

        def get_ssl_context():
            return ssl.create_default_context(cafile='our-authority.pem')

        async def sock_connect(loop, sock, address):
            await connect(loop, sock, proxies.get(address, address))

        connect = asyncio.SelectorEventLoop.sock_connect
        monkeypatch.setattr(asyncio.SelectorEventLoop, 'sock_connect', sock_connect)
        monkeypatch.setattr(socket, 'getaddrinfo', getaddrinfo)
        monkeypatch.setattr(aiodnsresolver, 'Resolver', get_dns_resolver)
        monkeypatch.setattr(lowhaio, 'Pool', functools.partial(
            Pool, get_dns_resolver=get_dns_resolver, get_sock=get_sock,
            get_ssl_context=get_ssl_context))
        yield site
    assert site.failures == []


def get(path, content=b''):
    return 'GET', path, content


MAPPED = ipaddress.ip_address('::ffff:10.0.0.1')  # as this version of Python shows it
HELLO = "b'200' b'<p>Hello</p>'"
FORM = b'name=Zo%C3%AB+%26+Co&tag=a&tag=b'
PARTS = (b'--BOUNDARY\r\ncontent-disposition: form-data; name="title"\r\n\r\nZo\xc3\xab\r\n'
         b'--BOUNDARY\r\ncontent-disposition: form-data; name="file"; filename="hello %221%22.txt"'
         b'\r\ncontent-type: text/plain\r\n\r\nhello world\r\n--BOUNDARY--\r\n')


class Row(NamedTuple):
    """What a block prints, and what it asks for, in any order; and what else must have been."""

    printed: list
    asked: list
    check: object = lambda site, logged: True


ROWS = {
    'README': Row(['status 200', "JSON {'up': True}"], [get('/status')]),
    'README-2': Row(
        ["""status 201 b'{"id": 7, "title": "Zo\\\\u00eb"}'"""],
        [('POST', '/documents', b'{"title": "Zo\\u00eb"}')]),
    'README-3': Row(
        ['uploaded 1000000 bytes, status 200', 'downloaded 1000000 bytes, status 200'],
        [('PUT', '/numbers', bytes(1_000_000)), get('/numbers')]),
    'index': Row(['status 200', "JSON {'up': True}"], [get('/status')]),
    'requests': Row(
        ["b'201' {'id': 7, 'title': 'Zoë'}"],
        [('POST', '/documents?draft=yes', b'{"title": "Zo\\u00eb"}')]),
    'time': Row([HELLO], [get('/')]),
    'connections': Row(
        [HELLO] * 2, [get('/first'), get('/second')],
        lambda site, logged: len(site.connected) == 1),
    'dns': Row(
        [HELLO], [get('/')],
        lambda site, logged: site.connected == [('192.0.2.1', 443)]),
    'tls': Row([HELLO], [get('/')]),
    'options': Row([HELLO], [get('/')]),
    'logging': Row(
        [], [get('/?page=1')],
        lambda site, logged: logged == 'INFO:lowhaio:[http:GET,https://www.example.com/] Received '
        '200 from https://www.example.com:443 (peer 127.0.0.1:443)\n'),
    'types': Row(
        [HELLO], [get('/')],
        lambda site, logged: site.asked[0].fields['accept-language'] == 'cy'),
    'layers': Row([HELLO], [get('/')]),
    'reference': Row([lowhaio.__version__, HttpConnectionError.__doc__], []),
    'responses': Row(
        ["b'200'", "b'content-length' b'12'", "b'content-type' b'text/html'", '12'],
        [get('/')]),
    'requests-2': Row(["b'200' b'<p>Hello</p>hello world'"], [('PUT', '/object', b'hello world')]),
    'errors': Row(
        ['Nothing was sent: GET https://unreachable.example.com:443: resolving '
        'unreachable.example.com failed: LookupError: no such name'], []),
    'recipes/whole-response': Row(
        ["b'200' b'<p>Hello</p>'", "b'200' b'<p>Hello</p>hello world'"],
        [get('/'), ('PUT', '/object', b'hello world')]),
    'recipes/header-dictionary': Row(
        ['text/html'], [get('/')],
        lambda site, logged: site.asked[0].fields.items() == [
            ('host', 'www.example.com'), ('Accept', 'text/html'), ('Accept', 'text/plain'),
            ('User-Agent', 'example/1.0')]),
    'recipes/json': Row(
        ["{'id': 7, 'title': 'Zoë'}", "('404', b'<p>Missing</p>')"],
        [('POST', '/documents?draft=yes', b'{"title": "Zo\\u00eb"}'), get('/missing')],
        lambda site, logged: [asked.fields.get('content-type') for asked in site.asked]
        == ['application/json', None]),
    'recipes/form': Row(
        [f"b'200' {b'<p>Hello</p>' + FORM!r}"], [('POST', '/form', FORM)],
        lambda site, logged: site.asked[0].fields['content-type']
        == 'application/x-www-form-urlencoded'),
    'recipes/multipart': Row(
        [f"b'200' {b'<p>Hello</p>' + PARTS!r}"], [('POST', '/upload', PARTS)]),
    'recipes/resuming-download': Row(
        ['1000'], [get('/archive.zip')] * 2,
        lambda site, logged: pathlib.Path('archive.zip').read_bytes() == b'a' * 400 + b'b' * 600
        and not list(pathlib.Path().glob('archive.zip.*')) and '100%' in logged),
    'recipes/server-sent-events': Row(
        ["Event(type='add', data='a\\nb', id='1')", "Event(type='message', data='c', id='2')"],
        [get('/events')] * 3,
        lambda site, logged: [asked.fields.get('last-event-id') for asked in site.asked]
        == [None, '1', '2'] and {asked.fields['accept'] for asked in site.asked}
        == {'text/event-stream'}),
    'recipes/unknown-length': Row(
        ["b'200' b'<p>Hello</p>row 0\\nrow 1\\nrow 2\\n'"],
        [('POST', '/rows', b'row 0\nrow 1\nrow 2\n')],
        lambda site, logged: site.asked[0].fields['transfer-encoding'] == 'chunked'),
    'recipes/compression': Row(
        ["b'200' b'text/plain' 40000"], [('POST', '/rows', b'row\n' * 10_000)],
        lambda site, logged: site.asked[0].fields['content-encoding'] == 'gzip'),
    'recipes/many-urls': Row(
        ["(b'200', b'<p>Hello</p>') (b'200', b'<p>Hello</p>')",
         'GET https://unreachable.example.com:443: resolving unreachable.example.com failed: '
         'LookupError: no such name'],
        [get(f'/{number}') for number in range(99)],
        lambda site, logged: len(site.connected) <= 5),
    'recipes/time-limits': Row([HELLO], [get('/')]),
    'recipes/redirects-retries-signatures': Row(
        [HELLO], [get('/report')] * 2 + [get('/reports/7')],
        lambda site, logged: len({asked.fields['authorization'].partition('Signature=')[2]
                                  for asked in site.asked[1:]}) == 2),
    'recipes/shutting-down': Row(
        ["https://www.example.com/jobs/first b'200' b'<p>Hello</p>'",
         "https://www.example.com/jobs/second b'200' b'<p>Hello</p>'", 'Closed'],
        [('POST', '/jobs/first', b''), ('POST', '/jobs/second', b'')]),
    'recipes/logging': Row(
        [], [get('/?name=7f3a'), get('/?name=9c04')],
        lambda site, logged: sorted(logged.splitlines()) == [
            line for name in ('7f3a', '9c04') for line in (
                f'INFO {name} There were 12 bytes',
                f'INFO {name} [http:GET,https://www.example.com/] Received 200 from '
                'https://www.example.com:443 (peer 127.0.0.1:443)')]),
    'recipes/logging-2': Row(
        [], [get('/?page=1')],
        lambda site, logged: logged == 'INFO:my-application:[http:nightly,GET,'
        'https://www.example.com/] Received 200 from https://www.example.com:443 '
        '(peer 127.0.0.1:443)\n'),
    'recipes/testing-without-network': Row(
        ['[True, False, False]', "(b'GET', 'https://a.example.com/', b'')"], []),
    'recipes/testing-with-a-socket': Row(["b'200' b'hello'"], []),
    'recipes/without-tls': Row([HELLO], [get('/')], lambda site, logged: not site.asked[0].is_tls),
    'recipes/tls': Row(
        [HELLO], [get('/')],
        lambda site, logged: site.asked[0].client == 'client.example.com'),
    'recipes/unix-socket': Row(
        [HELLO], [get('/')],
        lambda site, logged: site.asked[0].fields['host'] == 'localhost'),
    'recipes/http-proxy': Row(
        [HELLO], [get('/')],
        lambda site, logged: site.tunnels == ['CONNECT www.example.com:443']),
    'recipes/socks-proxy': Row(
        [HELLO], [get('/')],
        lambda site, logged: site.tunnels == ['SOCKS www.example.com:443']),
    'recipes/untrusted-urls': Row(
        ['GET http://localhost:80: resolving localhost failed: '
         'NotPublic: 127.0.0.1 is not public',
         'GET http://169.254.169.254:80: connecting failed: '
         '169.254.169.254: NotPublic: 169.254.169.254 is not public',
         f'GET http://[{MAPPED}]:80: connecting failed: {MAPPED}: '
         f'NotPublic: {MAPPED} is not public'], []),
    'recipes/system-resolver': Row(
        [HELLO], [get('/')],
        lambda site, logged: site.connected == [('192.0.2.7', 443)]),
    'recipes/pinned-addresses': Row(
        [HELLO], [get('/')],
        lambda site, logged: site.connected == [('192.0.2.1', 443)]),
    'recipes/authentication': Row(
        [HELLO] * 2, [get('/')] * 2,
        lambda site, logged: [(asked.fields['host'], asked.fields['authorization'])
                              for asked in site.asked] == [
            ('www.example.com', 'Basic dXNlcjpwYXNzd29yZA=='),
            ('api.example.com', 'Bearer my-token')]),
    'recipes/base-url': Row(
        [HELLO], [get('/v1/users?page=1')],
                            lambda site, logged: site.asked[0].fields.items()[1:] == [
        ('user-agent', 'example/1.0'), ('accept', 'application/json')]),
    'recipes/conditional-requests': Row(
        ["(b'200', b'colour = red')"] * 2, [get('/settings')] * 2,
        lambda site, logged: site.asked[1].fields['if-none-match'] == '"1"'),
    'recipes/connection-limits': Row(
        ['pool GET https://www.example.com:443: waiting for a connection failed: '
         'TimeoutError: pool_timeout, 0.1 seconds, passed', HELLO],
        [get('/'), get('/large'), get('/')],
        lambda site, logged: len(site.connected) == 2),
    'recipes/cookies': Row(
        ["[('session', 'www.example.com')]", HELLO], [('POST', '/login', b'name=Zoe'), get('/')],
        lambda site, logged: site.asked[1].fields['cookie'] == 'session=1'),
    'recipes/copy': Row(
        ["(b'200', b'<p>Hello</p><p>Hello</p>')"],
        [get('/'), ('PUT', '/object', b'<p>Hello</p>')]),
    'recipes/download': Row(['<p>Hello</p>'], [get('/')]),
    'recipes/json-lines': Row(["{'number': 1}", "{'number': 2}"], [get('/lines')]),
    'recipes/limited-response': Row(
        [HELLO, 'the response is longer than 10 bytes'], [get('/')] * 2),
    'recipes/measuring': Row(
        ['GET www.example.com 200 True',
        'GET unreachable.example.com HttpDnsError True'], [get('/')]),
    'recipes/query-parameters': Row(
        [HELLO], [get('/search?language=en&name=Zo%C3%AB+%26+Co&tag=a&tag=b&page=2')]),
    'recipes/rate-limit': Row(['True'], [get(f'/{number}') for number in range(5)]),
    'recipes/retries': Row(
        ["Attempt 1 failed, next in 0.1 seconds: b'503'", HELLO],
        [get('/busy')] * 2),
    'recipes/stale-connections': Row([HELLO], [get('/')]),
    'recipes/status-errors': Row(
        [HELLO, "('404', b'<p>Missing</p>')"],
        [get('/'), get('/missing')]),
    'recipes/synchronous-code': Row([HELLO], [get('/')]),
    'recipes/upload': Row(
        ['65536', '100000', "b'200' 100012"], [('PUT', '/numbers.bin', bytes(100_000))],
        lambda site, logged: site.asked[0].fields['expect'] == '100-continue'),
    'recipes/web-application': Row([HELLO], [get('/')]),
    'recipes/pagination': Row(["{'id': 1}", "{'id': 2}", "{'id': 3}"],
                              [get('/items'), get('/items?page=2')]),
    'recipes/s3-objects': Row(
        ["b'<p>Hello</p>'"],
        [('PUT', '/reports/2026%20%231.txt', b'hello world'), get('/reports/2026%20%231.txt')],
        lambda site, logged: all('Signature=' in asked.fields['authorization']
                                 for asked in site.asked)),
    'recipes/waiting-until-up': Row(["b'200'"], [get('/busy')] * 2),
    **{f'coming-from/{client}': Row(
        ['200 <p>Hello</p>', '7'],
        [get('/search?name=Zo%C3%AB'), ('POST', '/documents', b'{"title": "Zo\\u00eb"}'),
         get('/')],
        lambda site, logged: pathlib.Path('page.html').read_text() == '<p>Hello</p>'
        and {asked.fields['user-agent'] for asked in site.asked} == {'example/1.0'})
        for client in ('aiohttp', 'httpx', 'requests')},
    'scope': Row([HELLO], [get('/')]),
    'differences': Row(
        [HELLO], [get('/my%20key')],
        lambda site, logged: site.asked[0].fields['host'] == 'www.example.com'),
}


def test_every_block_of_the_pages_has_its_row():
    assert sorted(BLOCKS) == sorted(ROWS)


@pytest.mark.parametrize('name', ROWS)
def test_a_block_runs_as_it_stands(name, site, capsys, monkeypatch):
    row = ROWS[name]
    monkeypatch.setattr(logging.root, 'handlers', [])
    monkeypatch.setattr(logging.root, 'level', logging.WARNING)
    exec(compile(BLOCKS[name], name, 'exec'), {'__name__': '__main__'})
    out, err = capsys.readouterr()
    assert sorted(out.splitlines()) == sorted(row.printed)
    asked = [(asked.method, asked.path, asked.content) for asked in site.asked]
    assert sorted(asked) == sorted(row.asked)
    assert row.check(site, err)


def test_ctrl_c_shuts_down_as_sigterm_does(site, capsys, monkeypatch):
    def interrupting(asked):
        os.kill(os.getpid(), signal.SIGINT)
        return hello(asked)

    monkeypatch.setitem(ANSWERS, '/jobs/second', interrupting)
    block = BLOCKS['recipes/shutting-down']
    exec(compile(block, 'recipes/shutting-down', 'exec'), {'__name__': '__main__'})
    printed = capsys.readouterr().out.splitlines()
    assert sorted(printed) == sorted(ROWS['recipes/shutting-down'].printed)


# --------------------------------------------------------------------- what the pages say


def test_the_defaults_of_every_option_are_on_its_page():
    options = inspect.signature(Pool).parameters
    text = PAGES[ROOT / 'docs' / 'options.md']
    defaults = dict(re.findall(r'^\| `(\w+)` \| (.*?) \|', text, re.MULTILINE))
    assert sorted(defaults) == sorted(options)
    for name, option in options.items():
        if not callable(option.default):
            assert defaults[name].strip('`') == str(option.default)


def test_every_public_name_is_in_the_reference():
    names = re.findall(r'^::: lowhaio\.(\w+)', PAGES[ROOT / 'docs' / 'reference.md'], re.MULTILINE)
    assert sorted(names) == sorted(lowhaio.__all__)


def test_every_public_name_of_the_layers_is_in_their_reference():
    page = PAGES[ROOT / 'docs' / 'layers-reference.md']
    for path in ROOT.glob('layers/*/lowhaio_*.py'):
        module = importlib.import_module(path.stem)
        names = re.findall(rf'^::: {path.stem}\.(\w+)', page, re.MULTILINE)
        of_others = {name for name in module.__all__
                     if getattr(module, name).__class__ is types.FunctionType
                     and getattr(module, name).__module__ != path.stem}
        assert sorted(names) == sorted(set(module.__all__) - of_others)


def test_each_recipe_is_in_the_list_of_recipes():
    index = ROOT / 'docs' / 'recipes' / 'index.md'
    listed = re.findall(r'^- \[.*\]\((.*)\)', PAGES[index], re.MULTILINE)
    pages = [path.name for path in index.parent.glob('*.md') if path != index]
    assert sorted(listed) == sorted(pages)


def without_code(text):
    return re.sub(r'^```.*?^```$', '', text, flags=re.MULTILINE | re.DOTALL)


def anchors(text):
    """As code hosts and the site make them."""
    headings = re.findall(r'^#+ (.*)', without_code(text), re.MULTILINE)
    return [re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-') for heading in headings]


def links(text):
    """What is in a text, and the targets of its references at its end."""
    return re.findall(r'(?:\]\(|^\[[^]]*\]: )([^)\s]+)', without_code(text), re.MULTILINE)


def distribution():
    """What setup.py gives to setuptools."""
    given = {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(
            sys.modules, 'setuptools', types.SimpleNamespace(setup=given.update))
        runpy.run_path(str(ROOT / 'setup.py'))
    return given


IN_REPOSITORY = re.compile(re.escape(distribution()['url']) + '/(?:blob|raw)/HEAD/')


@pytest.mark.parametrize('path', PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(path):
    assert len(set(anchors(PAGES[path]))) == len(anchors(PAGES[path]))
    for link in links(PAGES[path]):
        base = ROOT if IN_REPOSITORY.match(link) else path.parent
        target, _, fragment = IN_REPOSITORY.sub('', link).partition('#')
        if not target.startswith('https://'):
            target = (base / target).resolve() if target else path
            assert target.is_file(), link
            assert not fragment or fragment in anchors(target.read_text(encoding='utf-8')), link


def test_the_page_of_a_package_index_has_absolute_links_only():
    given = distribution()
    assert given['long_description'] == PAGES[README]
    assert all(link.startswith('https://') for link in links(PAGES[README]))
    for target in given['project_urls'].values():
        assert target == given['url'] or (ROOT / IN_REPOSITORY.sub('', target)).is_file()
    assert f'repo_url: {given["url"]}\n' in (ROOT / 'mkdocs.yml').read_text()
    # Each reference has its target, and the other way round.
    text = re.sub('`[^`]*`', '', without_code(PAGES[README]))
    assert set(re.findall(r'\[([^]]*)\](?![\[(:])', text)) == set(
        re.findall(r'^\[([^]]*)\]: ', text, re.MULTILINE))


def test_nothing_tells_to_install_the_code_of_others():
    """A package index has other code under the names of the layers."""
    texts = [*PAGES.values(), *(path.read_text(encoding='utf-8')
                                for path in ROOT.glob('layers/**/README.md'))]
    commands = [line for text in texts for block in
                re.findall(r'^```shell\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)
                for line in block.splitlines() if 'pip install' in line]
    assert len(commands) > 10
    for command in commands:
        assert not re.search(r'lowhaio[\w-]*(?![\w-]| @ git|/|\.)', command), command


def test_the_readme_can_be_read_at_once():
    text = PAGES[README]
    assert len(text.splitlines()) <= 300
    screen = '\n'.join(text.splitlines()[:40])
    assert all(word in screen for word in ('status', 'JSON', 'install', '```python'))


def test_ci_runs_what_the_readme_tells_a_person_to_run():
    commands = re.findall(r'(?<=^```shell\n)pip install "\.\[.*?(?=\n```$)', PAGES[README],
                          re.MULTILINE | re.DOTALL)
    ci = (ROOT / '.ci' / 'run').read_text()
    assert len(commands) >= 2
    assert all(command in ci for command in commands)


# ------------------------------------------------------------- what the recipes promise


def recipe(page):
    """The imports, constants and definitions of the block of this page, as a module."""
    tree = ast.parse(BLOCKS[page])
    tree.body = [node for node in tree.body if isinstance(
        node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        or isinstance(node, ast.Assign) and node.targets[0].id.isupper()]
    module = types.ModuleType(page)
    exec(compile(tree, page, 'exec'), vars(module))
    return module


@contextlib.asynccontextmanager
async def answered(*responses):
    """A `request`, and the script that answers it."""
    script = Answering(*responses)
    async with Server(script) as server:
        async with pool(get_connection=connecting_to(http=server.port)) as request:
            yield request, script


@on_loops
async def test_all_of_it_at_once():
    fetch = recipe('recipes/whole-response').fetch
    async with answered(OK) as (request, script):
        for content in (None, b'', b'hello'):
            assert await fetch(
                request, b'POST', 'http://name.test/', headers=((b'a', b'b'),), content=content,
                params=(('c', 'd'),)) == (b'200', ((b'content-length', b'2'),), b'ok')
    head = b'POST /?c=d HTTP/1.1\r\nhost: name.test\r\na: b\r\n'
    assert script.heads == [head + end for end in (
        b'\r\n', b'content-length: 0\r\n\r\n', b'content-length: 5\r\n\r\n')]
    assert script.bodies == [b'', b'', b'hello']


def test_dictionaries_of_headers():
    module = recipe('recipes/header-dictionary')
    assert list(module.to_pairs({'A': 'b', 'C': ['d', 'é'], 'E': ()})) == [
        (b'A', b'b'), (b'C', b'd'), (b'C', b'\xe9')]
    assert module.to_dict(
        ((b'a', b'b'), (b'set-cookie', b'c'), (b'd', b'\xe9'), (b'a', b'b'))) == {
            'a': 'b, b', 'd': 'é'}


@on_loops
async def test_json():
    module = recipe('recipes/json')
    async with answered(
            response(200, b'[null]'), response(204), response(503, b'<p>' * 100),
            response(200, b'<p>')) as (request, script):
        get_json = functools.partial(module.fetch_json, request, b'GET', 'http://name.test/')
        assert await get_json(headers=((b'a', b'b'),)) == [None]
        assert await get_json({}) is None
        with pytest.raises(module.StatusError) as caught:
            await get_json()
        assert caught.value.args == ('503', (b'<p>' * 100)[:200])
        with pytest.raises(ValueError, match='Expecting value'):
            await get_json()
    assert script.heads[0] == (
        b'GET / HTTP/1.1\r\nhost: name.test\r\na: b\r\naccept: application/json\r\n\r\n')
    assert script.bodies == [b'', b'{}', b'', b'']
    assert script.connections == [0] * 4


@on_loops
async def test_files_in_a_form(tmp_path):
    large, empty = tmp_path / 'large.bin', tmp_path / 'a"b\r\n\\\xe9'
    large.write_bytes(os.urandom(1_000_000))
    empty.touch()
    multipart = recipe('recipes/multipart').multipart
    headers, body = multipart(
        [('a"\r\nb', 'c\r\n--d'), ('e', b'\0\xff'), ('f', large), ('g', empty)])
    boundary = dict(headers)[b'content-type'].removeprefix(b'multipart/form-data; boundary=')
    begin = b'--' + boundary + b'\r\ncontent-disposition: form-data; name='
    of_unknown_kind = b'content-type: application/octet-stream\r\n\r\n'
    content = (
        begin + b'"a%22%0D%0Ab"\r\n\r\nc\r\n--d\r\n'
        + begin + b'"e"\r\n\r\n\0\xff\r\n'
        + begin + b'"f"; filename="large.bin"\r\n' + of_unknown_kind + large.read_bytes() + b'\r\n'
        + begin + b'"g"; filename="a%22b%0D%0A\\\xc3\xa9"\r\n' + of_unknown_kind + b'\r\n'
        + b'--' + boundary + b'--\r\n')
    async with answered(OK) as (request, script):
        for _ in range(2):  # as a retry does
            await buffered((await request(
                b'POST', 'http://name.test/', headers=headers, body=body))[2])
    assert script.bodies == [content] * 2
    assert max([len(chunk) async for chunk in body()]) == 65536
    assert multipart([])[0] != multipart([])[0]


@pytest.mark.parametrize('change, message', [(1, 'yielded more'), (-1, 'ended 1 bytes short')])
@on_loops
async def test_a_file_in_a_form_that_changes_its_length_meanwhile(change, message, tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(bytes(100))
    headers, body = recipe('recipes/multipart').multipart([('file', path)])
    path.write_bytes(bytes(100 + change))
    async with answered(OK) as (request, script):
        with pytest.raises(HttpDataError, match=message):
            await request(b'POST', 'http://name.test/', headers=headers, body=body)
    assert script.heads == []


# ----------------------------------------------------------------------------- downloading

CONTENT = bytes(range(256)) * 4


def whole(etag=b'"1"', content=CONTENT):
    return response(200, content, b'etag: ' + etag)


def cut_off(*responses, at=100):
    """Answers with these, and closes after the head and so many bytes of the body."""
    async def script(peer):
        script.heads.append(await peer.read_head())
        answer = responses[len(script.heads) - 1]
        await peer.send(answer[:answer.index(b'\r\n\r\n') + 4 + at])

    script.heads = []
    return script


def rest(start, end=1024, etag=b'"1"', code=206, total=1024):
    return response(code, CONTENT[start:end], b'etag: ' + etag,
                    b'content-range: bytes %d-%d/%d' % (start, end - 1, total))


def unsatisfied(total, *fields):
    return response(416, b'', b'content-range: bytes */%d' % total, *fields)


@contextlib.contextmanager
def silent_bars(module):
    """What they were told at first."""
    bars = []

    def bar(**kwargs):
        bars.append((kwargs['initial'], kwargs['total']))
        return tqdm(file=io.StringIO(), **kwargs)

    tqdm, module.tqdm = module.tqdm, bar
    yield bars


async def downloaded(path, *responses, at=None, pauses=()):
    """The ranges that were asked for with their conditions, and what the bars began with."""
    module = recipe('recipes/resuming-download')
    script = Answering(*responses) if at is None else cut_off(*responses, at=at)
    with silent_bars(module) as bars:
        async with Server(script) as server, pool() as request:
            try:
                await module.download(request, server.url, path, pauses)
                error = None
            except module.DownloadError as caught:
                error = str(caught).replace(server.origin, '').replace(str(path), 'PATH')
    asked = [(value(head, b'range'), value(head, b'if-range')) for head in script.heads]
    assert all(value(head, b'accept-encoding') == b'identity' for head in script.heads)
    return asked, bars, error


NOT_WHOLE = 'PATH is not whole, and no more of it comes'
WHOLE = (None, None)
# Of which 100 bytes are there: the last of them once more.
FROM_99 = (b'bytes=99-', b'"1"')


async def begin(path, etag=b'"1"'):
    """A download of which 100 bytes have come."""
    asked, bars, error = await downloaded(path, whole(etag), at=100)
    assert (asked, bars, error) == ([WHOLE], [(0, 1024)], NOT_WHOLE)
    assert path.with_name('file.part').read_bytes() == CONTENT[:100]


DOWNLOADS = {
    # What is answered to the rest; what is asked for with that; what bars begin with.
    'the rest': ([rest(99)], [FROM_99], [(99, 1024)]),
    'the rest in pieces': (
        [rest(99, 200), rest(199)], [FROM_99, (b'bytes=199-', b'"1"')],
        [(99, 1024), (199, 1024)]),
    'the rest, with 200': ([rest(99, code=200)], [FROM_99], [(99, 1024)]),
    'the rest of another one, with 200': (
        [rest(99, etag=b'"2"', code=200), whole(b'"2"')], [FROM_99, WHOLE], [(0, 1024)]),
    'no ranges': ([whole()], [FROM_99], [(0, 1024)]),
    'it has changed': ([whole(b'"2"')], [FROM_99], [(0, 1024)]),
    'it has changed, and if-range is not known': (
        [rest(99, etag=b'"2"'), whole(b'"2"')], [FROM_99, WHOLE], [(0, 1024)]),
    'the rest has no etag': (
        [response(206, CONTENT[99:], b'content-range: bytes 99-1023/1024'), whole()],
        [FROM_99, WHOLE], [(0, 1024)]),
    'another range': ([rest(98), whole()], [FROM_99, WHOLE], [(0, 1024)]),
    'no range': (
        [response(206, b'a', b'etag: "1"'), whole()], [FROM_99, WHOLE], [(0, 1024)]),
    'another range, with 200': ([rest(0, code=200), whole()], [FROM_99, WHOLE], [(0, 1024)]),
    'it is shorter, and if-range is not known': (
        [unsatisfied(50), whole()], [FROM_99, WHOLE], [(0, 1024)]),
    'another one is as long as what is there, and if-range is not known': (
        [unsatisfied(100, b'etag: "2"'), whole()], [FROM_99, WHOLE], [(0, 1024)]),
    'the server has no time': (
        [response(503), response(429), rest(99)], [FROM_99] * 3, [(99, 1024)]),
}


@pytest.mark.parametrize('case', DOWNLOADS)
@on_loops
async def test_a_download_goes_on_where_it_ended(case, tmp_path):
    responses, asked, bars = DOWNLOADS[case]
    path = tmp_path / 'file'
    path.write_bytes(b'an earlier one')
    await begin(path)
    assert path.read_bytes() == b'an earlier one'
    assert await downloaded(path, *responses, pauses=[0] * (len(responses) - 1)) == (
        asked, bars, None)
    assert path.read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [path]


@on_loops
async def test_a_download_goes_on_as_long_as_bytes_come(tmp_path):
    """Two attempts that bring nothing, one after the other, are too many."""
    path = tmp_path / 'file'
    starts = [99, 198, 297, 297, 396, 396]
    busy = response(503, b'', b'connection: close')
    assert await downloaded(
        path, whole(), rest(99), rest(198), busy, rest(297), busy, busy, at=100,
        pauses=[0, 0]) == (
            [WHOLE, *((b'bytes=%d-' % start, b'"1"') for start in starts)],
            [(0, 1024), (99, 1024), (198, 1024), (297, 1024)], NOT_WHOLE)
    assert await downloaded(path, rest(396)) == ([(b'bytes=396-', b'"1"')], [(396, 1024)], None)
    assert path.read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [path]


@on_loops
async def test_a_download_that_begins_anew_again_and_again_comes_to_an_end(tmp_path):
    """Without an etag, the same bytes are no progress."""
    path = tmp_path / 'file'
    assert await downloaded(path, *[whole(b'')] * 3, at=100, pauses=(0, 0)) == (
        [WHOLE] * 3, [(0, 1024)] * 3, NOT_WHOLE)
    assert await downloaded(
        path, *[whole(b'"1"'), rest(99, etag=b'"2"')] * 2, at=100, pauses=(0, 0, 0)) == (
            [WHOLE, FROM_99] * 2, [(0, 1024)] * 2, NOT_WHOLE)


@on_loops
async def test_a_download_that_is_whole_already(tmp_path):
    path = tmp_path / 'file'
    await begin(path)
    assert await downloaded(path, rest(99, 100, total=100)) == ([FROM_99], [(99, 100)], None)
    assert path.read_bytes() == CONTENT[:100]
    assert list(tmp_path.iterdir()) == [path]


@on_loops
async def test_a_download_of_which_one_byte_has_come_begins_anew(tmp_path):
    path = tmp_path / 'file'
    assert await downloaded(path, whole(), whole(), at=1, pauses=[0]) == (
        [WHOLE] * 2, [(0, 1024)] * 2, NOT_WHOLE)
    assert await downloaded(path, whole()) == ([WHOLE], [(0, 1024)], None)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize('etag', [b'W/"1"', b''])
@on_loops
async def test_a_download_without_a_strong_etag_begins_anew(etag, tmp_path):
    path = tmp_path / 'file'
    await begin(path, etag)
    assert await downloaded(path, whole()) == ([WHOLE], [(0, 1024)], None)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize('code', [302, 404])
@on_loops
async def test_a_download_of_nothing_is_not_tried_again(code, tmp_path):
    path = tmp_path / 'file'
    assert await downloaded(path, response(code), pauses=(0,)) == (
        [WHOLE], [], f'file: the server answered {code}')
    assert list(tmp_path.iterdir()) == []


@on_loops
async def test_a_download_without_a_length(tmp_path):
    async def script(peer):
        await peer.read_head()
        await peer.send(b'HTTP/1.1 200 OK\r\n\r\nhello')

    module = recipe('recipes/resuming-download')
    with silent_bars(module) as bars:
        async with Server(script) as server, pool() as request:
            await module.download(request, server.url, tmp_path / 'file')
    assert (tmp_path / 'file').read_bytes() == b'hello'
    assert bars == [(0, None)]


# ------------------------------------------------------------------------------------ events

STREAMS = {
    # What of a stream arrives: types, data and IDs.
    'three lines': ('data: a\ndata: +2\ndata: 10\n\n', [('message', 'a\n+2\n10', '')]),
    'comment, ID, no ID, no end': (
        ': test\n\ndata: first\nid: 1\n\ndata:second\nid\n\ndata:  third\n',
        [('message', 'first', '1'), ('message', 'second', '')]),
    'empty data': ('data\n\ndata\ndata\n\ndata:', [('message', '', ''), ('message', '\n', '')]),
    'one space': ('data:a\n\ndata: a\n\ndata:  a\n\n',
                  [('message', text, '') for text in ('a', 'a', ' a')]),
    'colons': ('data:a:b: c\n\n', [('message', 'a:b: c', '')]),
    'types': ('event: a\ndata: b\n\ndata: c\n\nevent: d\nevent:e\ndata: f\n\n',
              [('a', 'b', ''), ('message', 'c', ''), ('e', 'f', '')]),
    'a type without data': ('event: a\n\ndata: b\n\n', [('message', 'b', '')]),
    'an ID stays': ('id: 1\ndata: a\n\ndata: b\n\n',
                    [('message', 'a', '1'), ('message', 'b', '1')]),
    'an ID alone': ('id: 1\n\ndata: b\n\n', [('message', 'b', '1')]),
    'an ID with NUL': ('id: 1\nid: 2\0\ndata: a\n\n', [('message', 'a', '1')]),
    'an ID that no field can have': (
        'id: 1\tb\nid: 2\x01\nid:\x7f\ndata: a\n\n', [('message', 'a', '1\tb')]),
    'CR': ('data: a\rdata: b\r\rdata: c\r\r', [('message', 'a\nb', ''), ('message', 'c', '')]),
    'CRLF': ('data: a\r\ndata: b\r\n\r\n', [('message', 'a\nb', '')]),
    'CR, CRLF, LF': ('data: a\rdata: b\r\ndata: c\n\ndata: d\r\n\n',
                     [('message', 'a\nb\nc', ''), ('message', 'd', '')]),
    'LF, CR': ('data: a\n\rdata: b\n\n', [('message', 'a', ''), ('message', 'b', '')]),
    'BOM': ('\ufeffdata: a\n\n', [('message', 'a', '')]),
    'BOM twice': ('\ufeff\ufeffdata: a\ndata: b\n\n', [('message', 'b', '')]),
    'BOM later': ('data: a\n\n\ufeffdata: b\n\n', [('message', 'a', '')]),
    'characters': ('data: \xe9\u20ac\U0001f600\x85\u2028\x0b\x0c\x1c\n\n',
                   [('message', '\xe9\u20ac\U0001f600\x85\u2028\x0b\x0c\x1c', '')]),
    'no UTF-8': (b'data: \xff\xc3\n\n', [('message', '\ufffd\ufffd', '')]),
    'unknown fields': ('Data: a\n data: b\ndat: c\ndata : d\ndata: e\n\n', [('message', 'e', '')]),
    'nothing': ('\n\r\n\r:\n\n', []),
}


@pytest.mark.parametrize('case', STREAMS)
def test_a_stream_of_events_is_read_as_browsers_do(case):
    def read(*chunks):
        parser = EventParser('', 3)
        return [tuple(event) for chunk in chunks for event in parser.feed(chunk)]

    EventParser = recipe('recipes/server-sent-events').EventParser
    stream, expected = STREAMS[case]
    data = stream if isinstance(stream, bytes) else stream.encode()
    assert read(data) == expected
    assert read(*[data[at:at + 1] for at in range(len(data))]) == expected
    for at in range(len(data)):
        assert read(data[:at], b'', data[at:]) == expected


def test_an_event_is_not_kept_waiting_for_a_line_feed():
    parser = recipe('recipes/server-sent-events').EventParser('', 3)
    assert len(list(parser.feed(b'data: a\r\r'))) == 1


def test_what_a_server_says_about_coming_back():
    def retry(text):
        parser = EventParser('', 3)
        assert list(parser.feed(text.encode())) == []
        return parser.retry

    EventParser = recipe('recipes/server-sent-events').EventParser
    assert retry('retry: 1500\n') == 1.5
    assert retry('retry: 0\n') == 0
    # A day at most.
    for text in ('86400001', '9' * 400, '9' * 10_000):
        assert retry(f'retry: {text}\n') == 86400
    for text in ('', '1.5', '-1', '+1', '1 ', '\u0663', '1_0'):
        assert retry(f'retry: {text}\n') == 3


@pytest.mark.parametrize('endless', [b'data: ab\n', b'data: ' + b'a' * 100, b':' + b'a' * 100])
def test_an_event_that_does_not_end_is_not_held_for_ever(endless):
    module = recipe('recipes/server-sent-events')
    module.MAX_EVENT = 10_000
    parser = module.EventParser('', 3)
    with pytest.raises(module.EventStreamError, match='an event is longer than 10000 characters'):
        for _ in range(2000):
            assert list(parser.feed(endless)) == []


@pytest.mark.parametrize('endless', [
    b': ping\n', b'\n', b'data: ab\n\n', b'event: a\nretry: 1\nid: 1\n'])
def test_a_stream_of_events_need_not_end(endless):
    module = recipe('recipes/server-sent-events')
    module.MAX_EVENT = 1000
    parser = module.EventParser('', 3)
    for data in (endless, endless * 10):
        for _ in range(1000):
            list(parser.feed(data))


def stream(content, *fields):
    return response(200, content, b'content-type: text/event-stream', *fields)


async def events_of(*responses, slept=None, **options):
    """What came, with what it ended, and the IDs that the server was told."""
    module = recipe('recipes/server-sent-events')
    module.asyncio = types.SimpleNamespace(sleep=sleeping([] if slept is None else slept))
    came = []
    async with answered(*responses) as (request, script):
        error = None
        try:
            async with contextlib.aclosing(
                    module.events(request, 'http://name.test/', **options)) as stream:
                async for event in stream:
                    came.append(event.data)
        except (HttpError, module.EventStreamError) as caught:
            error = type(caught).__name__
    return came, error, [value(head, b'last-event-id') for head in script.heads]


@on_loops
async def test_a_stream_of_events_that_is_lost_goes_on_after_the_last_one():
    assert await events_of(
        stream(b'retry: 0\ndata: a\n\n'),  # no ID yet
        stream(b'id: 1\ndata: b\n\nid: 2\n\n'),  # an ID alone counts
        stream(b'id: 3\ndata: c\n\nid: 4\ndata: no end'),  # one without end does not
        stream(b'data: d\n\n'),  # nor is the last one forgotten
        stream(b'id: \xc3\xa9\ndata: e\n\n'),
        stream(b'id\ndata: f\n\n'),
        response(204)) == (
            ['a', 'b', 'c', 'd', 'e', 'f'], None,
            [None, None, b'2', b'3', b'3', b'\xc3\xa9', None])


@on_loops
async def test_a_stream_of_events_survives_lost_connections():
    async def script(peer):
        script.heads.append(await peer.read_head())
        number = len(script.heads)
        if number == 7:
            await peer.send(response(204))
        elif number % 3 == 0:
            await peer.send(b'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n'
                            b'content-length: 100\r\n\r\nid: %d\ndata: a\n\n' % number)
        # And then, or else, it hangs up.

    script.heads = []
    module = recipe('recipes/server-sent-events')
    slept = []
    module.asyncio = types.SimpleNamespace(sleep=sleeping(slept))
    async with Server(script) as server, pool() as request:
        came = [event.id async for event in module.events(
            request, server.url, retry=1, attempts=3)]
    assert came == ['3', '6']
    assert [value(head, b'last-event-id') for head in script.heads] == [
        None, None, None, b'3', b'3', b'3', b'6']
    assert slept == [2, 4, 1, 2, 4, 1]


def sleeping(slept):
    async def sleep(seconds):
        slept.append(seconds)

    return sleep


@on_loops
async def test_a_stream_of_events_waits_longer_each_time_but_not_without_end():
    slept = []
    answers = [response(503), None, response(429), response(500), response(502), response(504),
               *[None] * 2000, stream(b'data: a\n\n'), response(503, b'busy'), response(204)]
    assert (await events_of(*answers, slept=slept, longest=20))[:2] == (['a'], None)
    assert slept == [3, 4, 8, 16, 20, *[20] * 2001, 3, 3]
    slept = []
    await events_of(
        stream(b'retry: 30000\n'), None, stream(b'retry: 0\n'), None, None, response(204),
        slept=slept, longest=20)
    assert slept == [30, 30, 0, 2, 4]


@on_loops
async def test_a_stream_of_events_goes_on_after_one_of_an_earlier_run():
    assert await events_of(
        response(503), stream(b'data: a\n\nid: 8\n\n'), response(204), last_id='7\xe9') == (
            ['a'], None, [b'7\xc3\xa9', b'7\xc3\xa9', b'8'])


@on_loops
async def test_a_stream_of_events_gives_up_if_it_is_told_to():
    assert await events_of(None, attempts=3) == ([], 'HttpConnectionClosedError', [None] * 3)
    assert await events_of(response(503), attempts=3) == ([], 'EventStreamError', [None] * 3)


@on_loops
async def test_a_stream_of_events_gives_up_where_time_does_not_help():
    events = recipe('recipes/server-sent-events').events
    request, close = Pool()
    with pytest.raises(HttpConnectionError, match='url must'):
        await anext(events(request, 'ftp://name.test/'))
    await close()
    with pytest.raises(HttpConnectionError, match='the pool is closed'):
        await anext(events(request, 'http://name.test/'))


@pytest.mark.parametrize('no_stream', [
    response(404, b'', b'content-type: text/event-stream'), response(200, b'data: a\n\n'),
    response(200, b'data: a\n\n', b'content-type: text/event-streams'), response(501)])
@on_loops
async def test_what_is_no_stream_of_events_is_not_asked_for_again(no_stream):
    assert await events_of(no_stream) == ([], 'EventStreamError', [None])


@on_loops
async def test_the_type_of_a_stream_of_events_is_in_any_case():
    assert await events_of(
        response(200, b'data: a\n\n', b'content-type: Text/Event-Stream ; charset=UTF-8'),
        response(204)) == (['a'], None, [None, None])


@on_loops
async def test_a_stream_of_events_that_is_left_is_closed():
    async def script(peer):
        await peer.read_head()
        await peer.send(b'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n'
                        b'\r\ndata: a\n\ndata: b\n\n')
        assert await peer.closed() == b''
        closed.set()

    closed = asyncio.Event()
    events = recipe('recipes/server-sent-events').events
    async with Server(script) as server, pool() as request:
        async with contextlib.aclosing(events(request, server.url)) as stream:
            async for event in stream:
                assert event.data == 'a'
                break
        await closed.wait()


# ------------------------------------------------------------------- many, and in time


@on_loops
async def test_so_many_urls_at_once_and_not_more():
    async def script(peer):
        while True:
            head = await peer.read_head()
            script.running += 1
            script.asked += 1
            script.most = max(script.most, script.running)
            await until(lambda: script.asked >= 3)
            await turns(5)  # for one too many to arrive
            script.running -= 1
            if b'GET /5 ' in head:
                return
            await peer.send(OK)

    script.running = script.asked = script.most = 0
    fetch_all = recipe('recipes/many-urls').fetch_all
    async with Server(script) as server, pool() as request:
        outcomes = await fetch_all(
            request, (f'{server.url}{number}' for number in range(9)), at_once=3)
    assert script.most == 3
    assert isinstance(outcomes.pop(5), HttpDataError)
    assert outcomes == [(b'200', b'ok')] * 8


@on_loops
async def test_the_time_of_a_url_begins_with_its_turn():
    async def silent(peer):
        heads.append(await peer.read_head())
        await peer.closed()

    heads = []
    fetch_all = recipe('recipes/many-urls').fetch_all
    async with Server(silent) as server, pool() as request:
        outcomes = await fetch_all(request, [server.url] * 2, at_once=1, seconds=0.05)
    assert [type(outcome) for outcome in outcomes] == [TimeoutError] * 2
    assert len(heads) == 2


PHASES = {
    # What each phase may take; how the server behaves; what is said.
    'connect': (None, 'connecting'),
    'head': ((), 'the head of the response'),
    'idle': ((b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no',), 'the next of its body'),
    'total': ((b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no',), 'all of it'),
}


@pytest.mark.parametrize('phase', PHASES)
@on_loops
async def test_a_phase_that_takes_too_long_is_told(phase):
    async def script(peer):
        await peer.read_head()
        await peer.send(*answer)
        await peer.closed()

    async def never(scheme, host, port):
        await asyncio.get_running_loop().create_future()

    answer, what = PHASES[phase]
    fetch_in_time = recipe('recipes/time-limits').fetch_in_time
    options = {} if answer is not None else {'get_connection': never}
    async with Server(script) as server, pool(socket_timeout=PATIENCE, **options) as request:
        with pytest.raises(TimeoutError) as caught:
            await fetch_in_time(request, server.url, **(
                dict.fromkeys(('connect', 'head', 'idle', 'total'), PATIENCE) | {phase: 0.05}))
        assert str(caught.value) == f'{server.url}: {what} took too long'
    assert asyncio.current_task().cancelling() == 0


@on_loops
async def test_the_time_of_a_phase_ends_with_it():
    async def serve():
        await reader.readuntil(b'\r\n\r\n')
        for piece in (b'HTTP/1.1 200 OK\r\n', b'content-length: 2\r\n\r\n', b'o', b'k'):
            await asyncio.sleep(0.01)
            writer.write(piece)

    async def get_connection(scheme, host, port):
        return ours

    fetch_in_time = recipe('recipes/time-limits').fetch_in_time
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    reader, writer = await asyncio.open_unix_connection(sock=theirs)
    serving = asyncio.create_task(serve())
    async with pool(get_connection=get_connection) as request:
        # Connecting takes no turn of the loop, and may not take any.
        assert await fetch_in_time(
            request, 'http://name.test/', 0, PATIENCE, PATIENCE, PATIENCE) == (
                b'200', ((b'content-length', b'2'),), b'ok')
    await serving
    writer.close()
    await writer.wait_closed()


# ---------------------------------------------------------------------------- shutting down


class Work:
    """Requests whose server answers when it is told to."""

    def __init__(self, *names):
        self.jobs = asyncio.Queue()
        for name in names:
            self.jobs.put_nowait(name)
        self.stopping = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.asked = []
        self.done = []

    async def script(self, peer):
        while True:
            self.asked.append(await peer.read_head())
            await self.may_answer.wait()
            await peer.send(OK)

    async def until_stopping(self, asked, **options):
        """Stops once so many requests have arrived. With other options, is told how it ended."""
        module = recipe('recipes/shutting-down')
        async with Server(self.script) as server:
            async def work(name):
                if name == 'bad':
                    raise ZeroDivisionError
                _, _, body = await request(b'GET', server.url + name)
                await buffered(body)
                self.done.append(name)

            async def stop():
                await until(lambda: len(self.asked) == asked)
                self.stopping.set()
                await turns(5)
                if 'seconds_left' not in options:
                    self.may_answer.set()

            async with module.pool() as request:
                async with asyncio.TaskGroup() as group:
                    stopper = group.create_task(stop())
                    try:
                        await module.work_until(self.stopping, self.jobs, work, **options)
                    finally:
                        stopper.cancel()
        with pytest.raises(HttpConnectionError, match='the pool is closed'):
            await request(b'GET', server.url)


@on_loops
async def test_what_runs_is_finished_and_nothing_else_is_begun():
    work = Work('a', 'b', 'c')
    await work.until_stopping(2, at_once=2)
    assert sorted(work.done) == ['a', 'b']
    assert work.jobs.get_nowait() == 'c'


@on_loops
async def test_work_goes_on_until_it_is_stopped():
    work = Work(*'abcde')
    work.may_answer.set()
    await work.until_stopping(5, at_once=2)
    assert sorted(work.done) == [*'abcde']


@on_loops
async def test_stopping_without_work():
    work = Work()
    await work.until_stopping(0)
    assert work.done == []


@on_loops
async def test_what_runs_too_long_is_cancelled():
    work = Work('a', 'b')
    with pytest.raises(ExceptionGroup) as caught:
        await work.until_stopping(2, seconds_left=0.01)
    assert [type(error) for error in caught.value.exceptions] == [TimeoutError]
    assert len(work.asked) == 2
    assert work.done == []


@on_loops
async def test_work_that_fails_ends_it_all_and_closes_the_pool():
    work = Work('a', 'bad')
    with pytest.raises(ExceptionGroup) as caught:
        await work.until_stopping(2)
    assert caught.value.subgroup(ZeroDivisionError)
    assert work.done == []


# ------------------------------------------------------------- layers, tests, unix sockets


@on_loops
async def test_the_shortest_layer_makes_again_what_was_not_sent():
    async def failing(method, url, **kwargs):
        asked.append((method, url, kwargs))
        raise errors.pop(0)

    asked, slept = [], []
    module = recipe('scope')
    module.asyncio = types.SimpleNamespace(sleep=sleeping(slept))
    request = module.with_retry(failing)
    errors = [HttpConnectionError('refused') for _ in range(4)]
    with pytest.raises(HttpConnectionError):
        await request(b'GET', 'http://name.test/', params=())
    assert asked == [(b'GET', 'http://name.test/', {'params': ()})] * 4
    assert slept == [0, 1, 2]
    errors = [HttpConnectionError('refused'), HttpDataError('closed')]
    with pytest.raises(HttpDataError):
        await request(b'GET', 'http://name.test/')
    assert slept == [0, 1, 2, 0]


@on_loops
async def test_answers_that_are_ready_take_the_place_of_a_network():
    answering = recipe('recipes/testing-without-network').answering
    request, asked = answering({
        (b'POST', 'http://a.test/'): (b'303', ((b'location', b'/b'),), b'moved'),
        (b'GET', 'http://a.test/b'): (b'200', (), b'here'),
        (b'GET', 'http://a.test/c'): HttpDataError('closed'),
    })
    code, headers, body = await redirectable(request)(
        b'POST', 'http://a.test/', body=streamed(b'form'))
    assert (code, headers, await buffered(body)) == (b'200', (), b'here')
    assert asked == [
        (b'POST', 'http://a.test/', b'form'), (b'GET', 'http://a.test/b', b'')]
    with pytest.raises(HttpDataError, match='closed'):
        await request(b'GET', 'http://a.test/c')
    with pytest.raises(KeyError):
        await request(b'GET', 'http://a.test/d')
    # It has the parameters of the real one, in their order.
    names = list(inspect.signature(request).parameters)[:-1]
    assert names == list(inspect.signature(Pool()[0]).parameters)[:len(names)]
    assert empty_async_iterator is inspect.signature(request).parameters['body'].default


@pytest.mark.parametrize('code, times', [(401, 1), (403, 1), (407, 1), (502, 3)])
@on_loops
async def test_a_proxy_whose_refusal_lasts_is_not_asked_again(code, times):
    script = Answering(response(code))
    module = recipe('recipes/http-proxy')
    async with Server(script) as proxy:
        get_connection = module.through_http_proxy(f'http://127.0.0.1:{proxy.port}')
        async with pool(get_connection=get_connection) as request:
            with pytest.raises(HttpConnectionError) as caught:
                await retry(request, ((HttpError, (0, 0)),))(b'GET', 'http://name.test/')
    assert isinstance(caught.value.__cause__, module.ProxyError)
    assert script.lines == ['CONNECT name.test:80'] * times


@on_loops
async def test_a_unix_socket(tmp_path):
    async def serve(reader, writer):
        await reader.readuntil(b'\r\n\r\n')
        writer.write(OK)
        await reader.read()
        writer.close()
        served.set()

    served = asyncio.Event()
    through_unix_socket = recipe('recipes/unix-socket').through_unix_socket
    path = str(tmp_path / 'server.sock')
    server = await asyncio.start_unix_server(serve, path)
    async with pool(get_connection=through_unix_socket(path)) as request:
        _, _, body = await request(b'GET', 'http://name.test/')
        assert await buffered(body) == b'ok'
    await served.wait()
    server.close()
    async with pool(get_connection=through_unix_socket(path + '.none')) as request:
        with pytest.raises(HttpConnectionError, match='FileNotFoundError') as caught:
            await request(b'GET', 'http://name.test/')
        assert isinstance(caught.value.__cause__, FileNotFoundError)


@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere it is refused')
@on_loops
async def test_a_unix_socket_whose_backlog_is_full(tmp_path):
    async def serve():
        sock, _ = await loop.sock_accept(listener)
        with sock:
            await loop.sock_recv(sock, 1000)
            await loop.sock_sendall(sock, OK)
            assert await loop.sock_recv(sock, 1000) == b''

    loop = asyncio.get_running_loop()
    path = str(tmp_path / 'server.sock')
    through_unix_socket = recipe('recipes/unix-socket').through_unix_socket
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        listener.listen(0)
        waiting = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2)]
        for sock in waiting:
            sock.setblocking(False)
        waiting[0].connect(path)
        with pytest.raises(BlockingIOError):
            waiting[1].connect(path)
        listener.setblocking(False)

        get_connection = through_unix_socket(path)
        async with pool(get_connection=get_connection, socket_timeout=0.05) as request:
            with pytest.raises(HttpConnectionError, match='socket_timeout') as caught:
                await request(b'GET', 'http://name.test/')
            assert isinstance(caught.value.__cause__, TimeoutError)
        async with pool(get_connection=get_connection) as request:
            task = asyncio.create_task(request(b'GET', 'http://name.test/'))
            await turns(20)
            assert not task.done()
            # There is room again once the first one has been accepted.
            (await loop.sock_accept(listener))[0].close()
            serving = asyncio.create_task(serve())
            _, _, body = await task
            assert await buffered(body) == b'ok'
        await serving
