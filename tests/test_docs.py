"""Tests of README.md and of the pages of docs/: each block of Python runs as it stands, each link
leads somewhere, and each public name, option and recipe has its place.

For the blocks, www.example.com is a server in a thread. What a block prints and asks for is in a
table. What the recipes do when something goes wrong is in test_recipes_connections.py and
test_recipes_requests.py.
"""

import contextlib
import email.message
import functools
import gzip
import http.server
import importlib
import inspect
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

import pytest
import trustme

import lowhaio
import lowhaio_proxy
from lowhaio import HttpConnectionError, Pool

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
        talk = TALKS.get(path)
        is_tls = isinstance(self.connection, ssl.SSLSocket)
        certificate = self.connection.getpeercert() if is_tls else None
        asked = Asked(
            self.command, self.path, b'' if talk else self.read_content(), self.headers, is_tls,
            certificate['subjectAltName'][0][1] if certificate else None,
            [one.path.partition('?')[0] for one in self.server.asked].count(path))
        self.server.asked.append(asked)
        if talk:
            talk(self)
            return
        code, fields, content = ANSWERS.get(path, hello)(asked)
        self.send_response_only(code)
        for name, text in {'content-length': str(len(content)), **fields}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_OPTIONS = do_POST = do_PUT = answer

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

    def repeat_chunks(self):
        """Each chunk comes back while the next one is still to come."""
        self.send_response_only(200)
        self.send_header('transfer-encoding', 'chunked')
        self.end_headers()
        length = 1
        while length:
            line = self.rfile.readline()
            length = int(line, 16)
            self.wfile.write(line + self.rfile.read(length + 2))

    def repeat_lines(self):
        assert (self.headers['connection'], self.headers['upgrade']) == ('upgrade', 'lines')
        self.send_response_only(101)
        self.send_header('connection', 'upgrade')
        self.send_header('upgrade', 'lines')
        self.end_headers()
        while line := self.rfile.readline():
            self.wfile.write(line)
        self.close_connection = True


TALKS = {'/words': Website.repeat_chunks, '/talk': Website.repeat_lines}


def hello(asked):
    return 200, {'content-type': 'text/html'}, b'<p>Hello</p>' + asked.content


def documents(asked):
    return 201, {'content-type': 'application/json'}, asked.content.replace(b'{', b'{"id": 7, ')


def missing(asked):
    return 404, {'content-type': 'text/html'}, b'<p>Missing</p>'


def archive(asked):
    """1000 bytes, of which the first 400 are the first answer, which is cut off."""
    if not asked.before:
        return 200, {'etag': '"1"', 'content-length': '1000', 'connection': 'close'}, b'a' * 400
    assert (asked.fields['range'], asked.fields['if-range']) == ('bytes=400-', '"1"')
    return 206, {'etag': '"1"', 'content-range': 'bytes 400-999/1000'}, b'b' * 600


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
    assert asked.fields['accept'] in (None, 'application/json')
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
        thread = threading.Thread(target=server.serve_forever, args=(0.001,))
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
        ports[3128] = site.start(WebServer, here, TunnelEnd)
        ports[1080] = site.start(WebServer, here, SocksTunnelEnd)
        site.start(UnixServer, 'server.sock', Website)

        async def resolve(name, record_type, get_logger_adapter):
            if name == 'unreachable.example.com':
                raise LookupError('no such name')
            return (ipaddress.ip_address('127.0.0.1'),)

        async def clear_cache(get_logger_adapter):
            pass

        def get_dns_resolver(get_logger_adapter, **files):
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

        monkeypatch.setattr(socket, 'getaddrinfo', getaddrinfo)
        monkeypatch.setattr(lowhaio, 'get_dns_resolver_default', get_dns_resolver)
        for module, name in (lowhaio, 'Pool'), (lowhaio_proxy, 'proxied_pool'):
            monkeypatch.setattr(module, name, functools.partial(
                getattr(module, name), get_dns_resolver=get_dns_resolver, get_sock=get_sock,
                get_ssl_context=get_ssl_context))
        yield site
    assert site.failures == []


def get(path, content=b''):
    return 'GET', path, content


MAPPED = ipaddress.ip_address('::ffff:10.0.0.1')  # as this version of Python shows it
HELLO = "b'200' b'<p>Hello</p>'"
OF_SESSION = "200 b'<p>Hello</p>'"
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
    'README-2': Row(['status 200', "JSON {'up': True}"], [get('/status')]),
    'README-3': Row(
        ['uploaded 1000000 bytes, status 200', 'downloaded 1000000 bytes, status 200'],
        [('PUT', '/numbers', bytes(1_000_000)), get('/numbers')]),
    'index': Row(['status 200', "JSON {'up': True}"], [get('/status')]),
    'index-2': Row(['status 200', "JSON {'up': True}"], [get('/status')]),
    'requests': Row(
        ["b'201' {'id': 7, 'title': 'Zoë'}"],
        [('POST', '/documents?draft=yes', b'{"title": "Zo\\u00eb"}')]),
    'time': Row([HELLO], [get('/')]),
    'time-2': Row([HELLO], [get('/')]),
    'connections': Row(
        [HELLO] * 2, [get('/first'), get('/second')],
        lambda site, logged: len(site.connected) == 1),
    'dns': Row([HELLO], [get('/')]),
    'dns-2': Row(
        [HELLO], [get('/')],
        lambda site, logged: site.connected == [('192.0.2.1', 443)]),
    'tls': Row([HELLO], [get('/')]),
    'tls-2': Row([HELLO], [get('/')]),
    'options': Row([HELLO], [get('/')]),
    'events': Row(['waited N s', 'received 12 bytes'], [get('/')]),
    'events-2': Row(["{1: 'first', 2: 'second'}"], [get('/')] * 2),
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
    'both-ways': Row(
        ["b'200' sent all: False", "answered: b'one'", "answered: b'two'", "answered: b'three'",
         'sent all: True'], [('POST', '/words', b'')]),
    'both-ways-2': Row(["b'101'", "b'hello\\n'"], [get('/talk')]),
    'requests-2': Row([HELLO], [('OPTIONS', '*', b'')]),
    'requests-3': Row(["b'200' b'<p>Hello</p>hello world'"], [('PUT', '/object', b'hello world')]),
    'errors': Row(
        ['Nothing was sent: GET https://unreachable.example.com:443: resolving '
        'unreachable.example.com failed: LookupError: no such name'], []),
    'recipes/whole-response': Row(
        [OF_SESSION, '200 <p>Hello</p>hello world'],
        [get('/'), ('PUT', '/object', b'hello world')]),
    'recipes/whole-response-2': Row([HELLO], [get('/')]),
    'recipes/header-dictionary': Row(
        ['text/html', "[] {'content-length': '12', 'content-type': 'text/html'}"], [get('/')],
        lambda site, logged: site.asked[0].fields.items()[:4] == [
            ('host', 'www.example.com'), ('Accept', 'text/html'), ('Accept', 'text/plain'),
            ('User-Agent', 'example/1.0')]),
    'recipes/json': Row(
        ["{'id': 7, 'title': 'Zoë'}", "404 b'<p>Missing</p>'"],
        [('POST', '/documents?draft=yes', '{"title":"Zoë"}'.encode()), get('/missing')],
        lambda site, logged: [asked.fields.get('content-type') for asked in site.asked]
        == ['application/json', None]),
    'recipes/form': Row(
        [f"200 {b'<p>Hello</p>' + FORM!r}"], [('POST', '/form', FORM)],
        lambda site, logged: site.asked[0].fields['content-type']
        == 'application/x-www-form-urlencoded'),
    'recipes/form-2': Row(
        [f"b'200' {b'<p>Hello</p>' + FORM!r}"], [('POST', '/form', FORM)],
        lambda site, logged: site.asked[0].fields['content-type']
        == 'application/x-www-form-urlencoded'),
    'recipes/multipart': Row(
        [f"200 {b'<p>Hello</p>' + PARTS!r}"], [('POST', '/upload', PARTS)]),
    'recipes/multipart-2': Row(
        [f"b'200' {b'<p>Hello</p>' + PARTS!r}"], [('POST', '/upload', PARTS)]),
    'recipes/resuming-download': Row(
        ['1000 0'], [get('/archive.zip')] * 2,
        lambda site, logged: pathlib.Path('archive.zip').read_bytes() == b'a' * 400 + b'b' * 600
        and not list(pathlib.Path().glob('archive.zip.*')) and '100%' in logged),
    'recipes/server-sent-events': Row(
        ["add 1 ['a', 'b']", "message 2 ['c']"],
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
        [OF_SESSION], [get('/v1/users?page=1')],
        lambda site, logged: site.asked[0].fields.items()[1:3] == [
            ('user-agent', 'example/1.0'), ('accept', 'application/json')]),
    'recipes/base-url-2': Row(
        [HELLO], [get('/v1/users')],
        lambda site, logged: site.asked[0].fields['user-agent'] == 'example/1.0'),
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
    'recipes/download': Row(['12 <p>Hello</p>'], [get('/')]),
    'recipes/json-lines': Row(["{'number': 1}", "{'number': 2}"], [get('/lines')]),
    'recipes/limited-response': Row(
        [HELLO, 'the response is longer than 10 bytes'], [get('/')] * 2),
    'recipes/measuring': Row(
        ['GET www.example.com 200 True',
        'GET unreachable.example.com name True'], [get('/')]),
    'recipes/query-parameters': Row(
        [OF_SESSION], [get('/search?language=en&name=Zo%C3%AB+%26+Co&tag=a&tag=b&page=2')]),
    'recipes/rate-limit': Row(['True'], [get(f'/{number}') for number in range(5)]),
    'recipes/retries': Row(
        ["Attempt 1 failed, next in 0.1 seconds: b'503'", HELLO],
        [get('/busy')] * 2),
    'recipes/stale-connections': Row([HELLO], [get('/')]),
    'recipes/status-errors': Row(
        [OF_SESSION, "GET https://www.example.com: 404 Not Found: b'<p>Missing</p>'"],
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
    **{f'coming-from/{client}{number}': Row(
        ['200 <p>Hello</p>', '7'],
        [get('/search?name=Zo%C3%AB'), ('POST', '/documents', document), get('/')],
        lambda site, logged: pathlib.Path('page.html').read_text() == '<p>Hello</p>'
        and {asked.fields['user-agent'] for asked in site.asked} == {'example/1.0'})
        for client in ('aiohttp', 'httpx', 'requests')
        for number, document in (
            ('', '{"title":"Zoë"}'.encode()), ('-2', b'{"title": "Zo\\u00eb"}'))},
    'scope': Row([HELLO], [get('/')]),
    'differences': Row(
        [HELLO], [get('/my%20key')],
        lambda site, logged: site.asked[0].fields['host'] == 'www.example.com'),
}


def test_every_block_of_the_pages_has_its_row():
    # Those about the SDKs need them, and are run by tests/outside/test_sdks.py.
    assert sorted(name for name in BLOCKS if not re.match('sdks(-|$)', name)) == sorted(ROWS)


@pytest.mark.parametrize('name', ROWS)
def test_a_block_runs_as_it_stands(name, site, capsys, caplog, monkeypatch):
    row = ROWS[name]
    monkeypatch.setattr(logging.root, 'handlers', [])
    # It is set again afterwards, or loggers would go on with the one that a block sets.
    caplog.set_level(logging.WARNING)
    exec(compile(BLOCKS[name], name, 'exec'), {'__name__': '__main__'})
    out, err = capsys.readouterr()
    # How long something took is another number each time.
    printed = re.sub(r'\b[0-9]+\.[0-9]{4} s\b', 'N s', out).splitlines()
    assert sorted(printed) == sorted(row.printed)
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
    packages = [path.parent for path in ROOT.glob('layers/*/lowhaio_*/__init__.py')]
    for path in [*ROOT.glob('layers/*/lowhaio_*.py'), *packages]:
        module = importlib.import_module(path.stem)
        names = re.findall(rf'^::: {path.stem}\.(\w+)', page, re.MULTILINE)
        of_others = {name for name in module.__all__
                     if isinstance(getattr(module, name), (types.FunctionType, type))
                     and getattr(module, name).__module__.partition('.')[0] != path.stem}
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
        assert not re.search(
            r'lowhaio[\w-]*(?:\[[\w,]*\])?(?![\w[-]| @ git|/|\.)', command), command


def test_the_readme_can_be_read_at_once():
    text = PAGES[README]
    assert len(text.splitlines()) <= 300
    screen = '\n'.join(text.splitlines()[:40])
    assert all(word in screen for word in ('status', 'JSON', 'install', '```python'))


def test_ci_runs_what_the_readme_tells_a_person_to_run():
    commands = re.findall(r'(?<=^```shell\n)pip install .*?(?=\n```$)', PAGES[README],
                          re.MULTILINE | re.DOTALL)
    ci = (ROOT / '.ci' / 'run').read_text()
    assert len(commands) == 4
    assert all(command in ci for command in commands)
