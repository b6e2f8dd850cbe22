"""What docs/coming-from/ says of aiohttp, httpx and requests.

The programs in `py` that are translated there run, and what the tables say of the others is seen.
When it is no longer so, the page has to be changed. The servers have a thread for each connection,
since requests blocks.
"""

import asyncio
import contextlib
import http.server
import pathlib
import re
import socket
import threading

import aiohttp
import httpx
import pytest
import requests

PAGES = pathlib.Path(__file__).parent.parent.parent / 'docs' / 'coming-from'
OK = b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok'


# ------------------------------------------------------------------------------------ the programs


class Website(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_GET(self):
        self.answer('text/html', b'<p>Hello</p>')

    def do_POST(self):
        content = self.rfile.read(int(self.headers['content-length']))
        self.answer('application/json', content.replace(b'{', b'{"id": 7, '))

    def answer(self, kind, content):
        self.send_response(200)
        self.send_header('content-type', kind)
        self.send_header('content-length', str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        self.server.lines.append(self.requestline)


@pytest.mark.parametrize('client', ['aiohttp', 'httpx', 'requests'])
def test_the_program_that_is_translated_runs(client, tmp_path, monkeypatch, capsys):
    text = (PAGES / f'{client}.md').read_text(encoding='utf-8')
    [program] = re.findall(r'(?<=^```py\n).*?(?=^```$)', text, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Website) as server:
        server.lines = []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        origin = f'http://127.0.0.1:{server.server_port}'
        exec(compile(program.replace('https://www.example.com', origin), client, 'exec'), {})
        server.shutdown()
        thread.join()
    assert capsys.readouterr().out == '200 <p>Hello</p>\n7\n'
    assert pathlib.Path('page.html').read_bytes() == b'<p>Hello</p>'
    assert server.lines == [
        'GET /search?name=Zo%C3%AB HTTP/1.1', 'POST /documents HTTP/1.1', 'GET / HTTP/1.1']


# -------------------------------------------------------------------------------------- the tables


class Recording:
    """A server that keeps the heads that it is sent, and answers them one after the other.

    An answer of None closes the connection, and all later ones are OK.
    """

    def __init__(self, *answers):
        self.answers = list(answers)
        self.heads = []

    def __enter__(self):
        self.sock = socket.create_server(('127.0.0.1', 0))
        self.origin = f'http://127.0.0.1:{self.sock.getsockname()[1]}'
        self.threads = [threading.Thread(target=self.accept)]
        self.threads[0].start()
        return self

    def __exit__(self, *args):
        self.sock.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join()
        self.sock.close()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.sock.accept()
                self.threads.append(threading.Thread(target=self.serve, args=(sock,)))
                self.threads[-1].start()

    def serve(self, sock):
        with sock, sock.makefile('rb') as file:
            while head := b''.join(iter(file.readline, b'\r\n')) if file.peek(1) else b'':
                self.heads.append(head.decode())
                length = re.search(rb'(?i)^content-length: (\d+)', head, re.MULTILINE)
                file.read(int(length[1]) if length else 0)
                if b'chunked' in head:
                    while file.readline() != b'0\r\n':
                        pass
                    file.readline()
                answer = self.answers.pop(0) if self.answers else OK
                if answer is None:
                    return
                sock.sendall(answer)

    @property
    def lines(self):
        return [head.splitlines()[0] for head in self.heads]


def with_aiohttp(*calls, **kwargs):
    """The code of the last response, or its exception, of one session."""
    async def main():
        async with aiohttp.ClientSession() as session:
            for method, url in calls:
                async with session.request(method, url, **kwargs) as response:
                    await response.read()
            return response.status

    return outcome(lambda: asyncio.run(main()))


def with_httpx(*calls, data=None, **kwargs):
    async def main():
        async with httpx.AsyncClient() as client:
            for method, url in calls:
                response = await client.request(method, url, content=data, **kwargs)
            return response.status_code

    return outcome(lambda: asyncio.run(main()))


def with_requests(*calls, **kwargs):
    def main():
        with requests.Session() as session:
            for method, url in calls:
                response = session.request(method, url, **kwargs)
            return response.status_code

    return outcome(main)


def outcome(call):
    try:
        return call()
    except Exception as error:
        return type(error).__name__


CLIENTS = {'aiohttp': with_aiohttp, 'httpx': with_httpx, 'requests': with_requests}
in_each = pytest.mark.parametrize('client', CLIENTS)


@in_each
def test_which_fields_are_added(client):
    with Recording() as server:
        assert CLIENTS[client](('GET', server.origin)) == 200
    names = {line.partition(':')[0].lower() for line in server.heads[0].splitlines()[1:]}
    assert names == {'host', 'accept', 'accept-encoding', 'user-agent'} | (
        set() if client == 'aiohttp' else {'connection'})


@in_each
def test_the_url_that_is_sent(client):
    with Recording() as server:
        assert CLIENTS[client](('GET', f'{server.origin}/a/../%7Eb?x=%2F')) == 200
    assert server.lines == [{
        'aiohttp': 'GET /~b?x=/ HTTP/1.1',
        'httpx': 'GET /%7Eb?x=%2F HTTP/1.1',
        'requests': 'GET /~b?x=%2F HTTP/1.1'}[client]]


@in_each
def test_redirects_and_what_another_origin_gets(client):
    with Recording() as other:
        moved = (f'HTTP/1.1 302 Found\r\nlocation: {other.origin}/\r\n'
                 'content-length: 0\r\n\r\n').encode()
        secrets = {'authorization': 'Bearer a', 'x-api-key': 'b'}
        with Recording(moved) as server:
            # Another port is another origin.
            code = CLIENTS[client](('POST', server.origin), headers=secrets, data=b'c')
        if client == 'httpx':
            assert (code, other.heads) == (302, [])
        else:
            assert (code, other.lines) == (200, ['GET / HTTP/1.1'])
            [head] = map(str.lower, other.heads)
            assert 'x-api-key: b' in head
            assert 'authorization' not in head


@in_each
def test_a_connection_that_is_closed_when_it_is_used_again(client):
    for method, expected in (
            ('GET', {'aiohttp': 200}),
            ('POST', {'aiohttp': 'ServerDisconnectedError'})):
        with Recording(OK, None) as server:
            assert CLIENTS[client](*[(method, server.origin)] * 2) == {
                'httpx': 'RemoteProtocolError', 'requests': 'ConnectionError', **expected}[client]


@in_each
def test_a_body_of_a_generator_is_chunked(client):
    async def chunks():
        yield b'a'

    def blocking_chunks():
        yield b'a'

    with Recording() as server:
        data = blocking_chunks() if client == 'requests' else chunks()
        assert CLIENTS[client](('POST', server.origin), data=data) == 200
    assert 'transfer-encoding: chunked' in server.heads[0].lower()


@in_each
def test_who_replaces_the_query_of_the_url(client):
    with Recording() as server:
        assert CLIENTS[client](('GET', f'{server.origin}/?a=1'), params={'b': '2'}) == 200
    query = 'b=2' if client == 'httpx' else 'a=1&b=2'
    assert server.lines == [f'GET /?{query} HTTP/1.1']


@in_each
def test_who_goes_through_the_proxy_of_the_environment(client, monkeypatch):
    with Recording() as proxy:
        for name in ('http_proxy', 'HTTP_PROXY'):
            monkeypatch.setenv(name, proxy.origin)
        for name in ('no_proxy', 'NO_PROXY'):
            monkeypatch.delenv(name, raising=False)
        with Recording() as server:
            url = f'{server.origin}/'
            assert CLIENTS[client](('GET', url)) == 200
    assert (proxy.lines, server.lines) == (
        ([], ['GET / HTTP/1.1']) if client == 'aiohttp' else ([f'GET {url} HTTP/1.1'], []))


def test_defaults():
    async def of_aiohttp():
        async with aiohttp.ClientSession() as session:
            return session.timeout, session.connector.limit

    timeout, limit = asyncio.run(of_aiohttp())
    assert (timeout.total, timeout.sock_connect, timeout.sock_read, limit) == (
        300, 30, None, 100)
    assert httpx.AsyncClient().timeout == httpx.Timeout(5)
    assert requests.Session().max_redirects == 30
