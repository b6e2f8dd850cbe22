"""Tests of README.md: each of its blocks runs as it stands, and its recipes keep their word when
something goes wrong.

In the first part www.example.com is a server in a thread, and what a block prints and asks for is
in a table. In the second one the functions of the recipes are called, on both loops, and servers
are scripted in bytes by the harness of the layers' tests.
"""

import ast
import asyncio
import contextlib
import email.message
import functools
import gzip
import http.server
import inspect
import io
import ipaddress
import logging
import os
import pathlib
import re
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

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [
    str(HERE / 'layers'), *(str(path.parent) for path in HERE.glob('layers/*/lowhaio_*.py'))]

from harness import (  # noqa: E402
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
    values_of,
)

README = (HERE / 'README.md').read_text(encoding='utf-8')
BLOCKS = re.findall(r'(?<=^```python\n).*?(?=^```$)', README, re.MULTILINE | re.DOTALL)


# ------------------------------------------------------------------- each block as it stands


class Asked(NamedTuple):
    method: str
    path: str
    content: bytes
    fields: email.message.Message
    is_tls: bool
    client: str  # the name in its certificate
    before: int  # how often this path was asked for before


class Website(http.server.BaseHTTPRequestHandler):
    """What www.example.com is for the README. It answers with what it was sent, unless PAGES has
    a function for the path."""

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
        code, fields, content = PAGES.get(path, hello)(asked)
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


def terminating(asked):
    os.kill(os.getpid(), signal.SIGTERM)
    return hello(asked)


PAGES = {
    '/documents': documents,
    '/missing': missing,
    '/archive.zip': archive,
    '/events': event_stream,
    '/rows': rows,
    '/report': report,
    '/jobs/second': terminating,
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
    """The servers of the README, each in a thread, and what they have seen."""

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
    """With the names, the certificates and the working directory of the README."""
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
    # In the order of the README.
    'first': Row(["b'200'", "b'content-length' b'12'", "b'content-type' b'text/html'", '12'],
                 [get('/')]),
    'body': Row(["b'200' b'<p>Hello</p>hello world'"], [('PUT', '/object', b'hello world')]),
    'exceptions': Row(['Nothing was sent: GET https://unreachable.example.com:443: resolving '
                       'unreachable.example.com failed: LookupError: no such name'], []),
    'fetch': Row(["b'200' b'<p>Hello</p>'", "b'200' b'<p>Hello</p>hello world'"],
                 [get('/'), ('PUT', '/object', b'hello world')]),
    'dictionary': Row(
        ['text/html'], [get('/')],
        lambda site, logged: site.asked[0].fields.items() == [
            ('host', 'www.example.com'), ('Accept', 'text/html'), ('Accept', 'text/plain'),
            ('User-Agent', 'example/1.0')]),
    'json': Row(["{'id': 7, 'title': 'Zoë'}", "('404', b'<p>Missing</p>')"],
                [('POST', '/documents?draft=yes', b'{"title": "Zo\\u00eb"}'), get('/missing')],
                lambda site, logged: [asked.fields.get('content-type') for asked in site.asked]
                == ['application/json', None]),
    'form': Row([f"b'200' {b'<p>Hello</p>' + FORM!r}"], [('POST', '/form', FORM)],
                lambda site, logged: site.asked[0].fields['content-type']
                == 'application/x-www-form-urlencoded'),
    'multipart': Row([f"b'200' {b'<p>Hello</p>' + PARTS!r}"], [('POST', '/upload', PARTS)]),
    'download': Row(
        ['1000'], [get('/archive.zip')] * 2,
        lambda site, logged: pathlib.Path('archive.zip').read_bytes() == b'a' * 400 + b'b' * 600
        and not list(pathlib.Path().glob('archive.zip.*')) and '100%' in logged),
    'events': Row(
        ["Event(type='add', data='a\\nb', id='1')", "Event(type='message', data='c', id='2')"],
        [get('/events')] * 3,
        lambda site, logged: [asked.fields.get('last-event-id') for asked in site.asked]
        == [None, '1', '2'] and {asked.fields['accept'] for asked in site.asked}
        == {'text/event-stream'}),
    'chunked': Row(["b'200' b'<p>Hello</p>row 0\\nrow 1\\nrow 2\\n'"],
                   [('POST', '/rows', b'row 0\nrow 1\nrow 2\n')],
                   lambda site, logged: site.asked[0].fields['transfer-encoding'] == 'chunked'),
    'compressed': Row(["b'200' b'text/plain' 40000"], [('POST', '/rows', b'row\n' * 10_000)],
                      lambda site, logged: site.asked[0].fields['content-encoding'] == 'gzip'),
    'hundred': Row(
        ["(b'200', b'<p>Hello</p>') (b'200', b'<p>Hello</p>')",
         'GET https://unreachable.example.com:443: resolving unreachable.example.com failed: '
         'LookupError: no such name'],
        [get(f'/{number}') for number in range(99)]),
    'phases': Row([HELLO], [get('/')]),
    'stack': Row(
        [HELLO], [get('/report')] * 2 + [get('/reports/7')],
        lambda site, logged: len({asked.fields['authorization'].partition('Signature=')[2]
                                  for asked in site.asked[1:]}) == 2),
    'shutdown': Row(
        ["https://www.example.com/jobs/first b'200' b'<p>Hello</p>'",
         "https://www.example.com/jobs/second b'200' b'<p>Hello</p>'", 'Closed'],
        [('POST', '/jobs/first', b''), ('POST', '/jobs/second', b'')]),
    'context': Row(
        [], [get('/?name=7f3a'), get('/?name=9c04')],
        lambda site, logged: sorted(logged.splitlines()) == [
            line for name in ('7f3a', '9c04') for line in (
                f'INFO {name} There were 12 bytes',
                f'INFO {name} [http:GET,https://www.example.com/] Received 200 from '
                'https://www.example.com:443 (peer 127.0.0.1:443)')]),
    'prefix': Row(
        [], [get('/?page=1')],
        lambda site, logged: logged == 'INFO:my-application:[http:nightly,GET,'
        'https://www.example.com/] Received 200 from https://www.example.com:443 '
        '(peer 127.0.0.1:443)\n'),
    'no-network': Row(['[True, False, False]', "(b'GET', 'https://a.example.com/', b'')"], []),
    'socket-pair': Row(["b'200' b'hello'"], []),
    'unencrypted': Row([HELLO], [get('/')], lambda site, logged: not site.asked[0].is_tls),
    'tls': Row([HELLO], [get('/')],
               lambda site, logged: site.asked[0].client == 'client.example.com'),
    'unix-socket': Row([HELLO], [get('/')],
                       lambda site, logged: site.asked[0].fields['host'] == 'localhost'),
    'http-proxy': Row([HELLO], [get('/')],
                      lambda site, logged: site.tunnels == ['CONNECT www.example.com:443']),
    'socks-proxy': Row([HELLO], [get('/')],
                       lambda site, logged: site.tunnels == ['SOCKS www.example.com:443']),
    'strangers': Row(
        ['GET http://localhost:80: resolving localhost failed: '
         'NotPublic: 127.0.0.1 is not public',
         'GET http://169.254.169.254:80: connecting failed: '
         '169.254.169.254: NotPublic: 169.254.169.254 is not public',
         f'GET http://[::ffff:a00:1]:80: connecting failed: ::ffff:a00:1: '
         f'NotPublic: {ipaddress.ip_address("::ffff:a00:1")} is not public'], []),
    'system-resolver': Row([HELLO], [get('/')],
                           lambda site, logged: site.connected == [('192.0.2.7', 443)]),
    'pinned': Row([HELLO], [get('/')],
                  lambda site, logged: site.connected == [('192.0.2.1', 443)]),
    'layer': Row([HELLO], [get('/')]),
}


def test_every_block_of_the_readme_has_its_row():
    assert len(BLOCKS) == len(ROWS)


@pytest.mark.parametrize(
    'block, row', [pytest.param(block, row, id=name)
                   for block, (name, row) in zip(BLOCKS, ROWS.items(), strict=False)])
def test_a_block_of_the_readme_runs_as_it_stands(block, row, site, capsys, monkeypatch):
    monkeypatch.setattr(logging.root, 'handlers', [])
    monkeypatch.setattr(logging.root, 'level', logging.WARNING)
    exec(compile(block, 'README.md', 'exec'), {'__name__': '__main__'})
    out, err = capsys.readouterr()
    assert sorted(out.splitlines()) == sorted(row.printed)
    asked = [(asked.method, asked.path, asked.content) for asked in site.asked]
    assert sorted(asked) == sorted(row.asked)
    assert row.check(site, err)


def test_the_readme_tells_the_defaults_of_every_option():
    options = inspect.signature(Pool).parameters
    defaults = dict(re.findall(
        r'^\| `(\w+)` \| (.*?) \|', section('Options of `Pool`'), re.MULTILINE))
    assert list(defaults) == list(options)
    for name, option in options.items():
        if not callable(option.default):
            assert defaults[name].strip('`') == str(option.default)


def test_each_recipe_has_a_heading_and_is_in_the_list():
    recipes = section('Recipes')
    listed = re.findall(r'\[([^]]*)\]\((#[^)]*)\)', recipes.partition('\n### ')[0])
    headings = re.findall(r'^### (.*)', recipes, re.MULTILINE)
    assert [target for _, target in listed] == [anchor(heading) for heading in headings]
    assert [' '.join(name.split()).lower() for name, _ in listed] == [
        heading.lower() for heading in headings]
    assert all('```python' in part for part in recipes.split('\n### ')[1:])


def test_links_of_the_readme_lead_somewhere():
    text = re.sub(r'^```.*?^```$', '', README, flags=re.MULTILINE | re.DOTALL)
    anchors = [anchor(heading) for heading in re.findall(r'^##+ (.*)', text, re.MULTILINE)]
    assert len(set(anchors)) == len(anchors)
    links = set(re.findall(r'\]\(([^)]*)\)', text))
    assert {link for link in links if link.startswith('#')} <= set(anchors)
    for link in links:
        if not link.startswith(('#', 'https://')):
            path, _, fragment = link.partition('#')
            headings = re.findall(r'^##+ (.*)', (HERE / path).read_text(encoding='utf-8'),
                                  re.MULTILINE)
            assert not fragment or '#' + fragment in map(anchor, headings)


def section(heading):
    return README.partition(f'\n## {heading}\n')[2].partition('\n## ')[0]


def anchor(heading):
    """As code hosts make them."""
    return '#' + re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-')


def test_ci_runs_what_the_readme_tells_a_person_to_run():
    commands = re.findall(r'(?<=^```shell\n).*?(?=\n```$)', README, re.MULTILINE | re.DOTALL)
    ci = (HERE / '.ci' / 'run').read_text()
    assert len(commands) == 2
    assert all(command in ci for command in commands)
