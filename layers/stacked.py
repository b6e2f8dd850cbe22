"""Stacks layers around requests to a server that it starts on the loopback interface.

    python layers/stacked.py

The server answers 503 first, then redirects, and then answers with what it was sent, the scheme of
the credentials and the cookie. This is printed, once for each kind of credentials.
"""
import asyncio
import gzip
import threading
from functools import partial
from http.cookiejar import CookieJar
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from lowhaio_auth import basic
from lowhaio_aws_sigv4 import signed
from lowhaio_aws_sigv4_unsigned_payload import signed as signed_without_body
from lowhaio_chunked import chunked
from lowhaio_compression import compressed, decompressed
from lowhaio_cookies import with_cookies
from lowhaio_redirect import redirectable
from lowhaio_retry import retry
from lowhaio_session import compose

from lowhaio import Pool, buffered


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    asked = 0

    def do_PUT(self):
        content = gzip.decompress(self.read_content())
        scheme = self.headers['authorization'].split(' ')[0]
        answer = f'{scheme} {self.headers["cookie"]} {content.decode()}'
        code, fields, content = [
            (503, {}, b''),
            (307, {'location': '/again', 'set-cookie': 'known=1'}, b''),
            (200, {'content-encoding': 'gzip'}, gzip.compress(answer.encode())),
        ][Handler.asked % 3]
        Handler.asked += 1
        self.send_response_only(code)
        for name, value in {**fields, 'content-length': str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def read_content(self):
        if 'content-length' in self.headers:
            return self.rfile.read(int(self.headers['content-length']))
        content = b''
        while length := int(self.rfile.readline(), 16):
            content += self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()
        return content


async def rows():
    for number in range(3):
        yield b'row %d, ' % number


async def get_credentials():
    return 'id', 'secret', ()


async def put(origin, authorized, body, *headers):
    request, close = Pool()
    request = compose(
        request, decompressed, redirectable, partial(retry, code_intervals=((b'503', (0,)),)),
        partial(with_cookies, jar=CookieJar()), authorized)
    code, _, response_body = await request(
        b'PUT', origin, headers=((b'content-encoding', b'gzip'), *headers), body=body)
    print(code.decode(), (await buffered(response_body)).decode())
    await close()


async def main(origin):
    body = compressed(rows, b'gzip')
    is_chunked = (b'transfer-encoding', b'chunked')
    await put(origin, lambda request: basic(request, 'user', 'password', origin=origin),
              chunked(body), is_chunked)
    await put(origin, lambda request: signed_without_body(
        request, get_credentials, 's3', 'eu-west-2'), chunked(body), is_chunked)
    await put(origin, lambda request: signed(request, get_credentials, 's3', 'eu-west-2'), body)


with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        asyncio.run(main(f'http://127.0.0.1:{server.server_port}'))
    finally:
        server.shutdown()
        thread.join()
