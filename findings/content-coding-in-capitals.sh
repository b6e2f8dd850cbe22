#!/usr/bin/env bash
# Four clients on Rust leave `Content-Encoding: GZIP` as it is, and a list of codings, too.
#
# Packages: wreq 0.13.0, primp 2.0.1, pyreqwest 0.15.1, pyqwest 0.12.0; aiohttp 3.14.5 and httpx2 2.16.2 beside them.
# Guess: the names of content codings are case-insensitive (RFC 9110 8.4.1), and the field is a list of them in
#   the order in which they were applied (8.4). A client that decodes at all undoes `GZIP`, and `gzip, gzip`.
# What happens: these four compare the whole value with `gzip`. Otherwise the caller gets the compressed bytes
#   as content. aiohttp undoes GZIP, but not the list; httpx2 undoes both.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    httpx2==2.16.2 wreq==0.13.0 primp==2.0.1 pyreqwest==0.15.1 pyqwest==0.12.0 aiohttp==3.14.5 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import asyncio
import gzip
import http.server
import threading

CODED = {
    'gzip': gzip.compress(b'content'),
    'GZIP': gzip.compress(b'content'),
    'gzip, gzip': gzip.compress(gzip.compress(b'content')),
}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        coding = list(CODED)[int(self.path.strip('/'))]
        self.send_response(200)
        self.send_header('content-encoding', coding)
        self.send_header('content-length', str(len(CODED[coding])))
        self.end_headers()
        self.wfile.write(CODED[coding])

    def log_message(self, *_):
        pass


async def with_aiohttp(url):
    import aiohttp
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return await response.read()


async def with_httpx2(url):
    import httpx2
    async with httpx2.AsyncClient() as client:
        return (await client.get(url)).content


async def with_wreq(url):
    import wreq
    return await (await wreq.Client().get(url)).bytes()


async def with_primp(url):
    import primp
    return primp.Client().get(url).content


async def with_pyreqwest(url):
    from pyreqwest.client import ClientBuilder
    async with ClientBuilder().build() as client:
        return await (await client.get(url).build().send()).bytes()


async def with_pyqwest(url):
    import pyqwest
    return (await pyqwest.Client().get(url)).content


server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
for client, expected in ((with_httpx2, [True, True, True]), (with_aiohttp, [True, True, False]),
                         (with_wreq, [True, False, False]), (with_primp, [True, False, False]),
                         (with_pyreqwest, [True, False, False]), (with_pyqwest, [True, False, False])):
    outcomes = []
    for index, coded in enumerate(CODED.values()):
        content = bytes(asyncio.run(client(f'http://127.0.0.1:{server.server_port}/{index}')))
        outcomes.append(content == b'content')
        assert content in (b'content', coded), content
    print(f'{client.__name__.removeprefix("with_")}: decodes', dict(zip(CODED, outcomes)))
    assert outcomes == expected
PYTHON
# Seen:
#   httpx2: decodes {'gzip': True, 'GZIP': True, 'gzip, gzip': True}
#   aiohttp: decodes {'gzip': True, 'GZIP': True, 'gzip, gzip': False}
#   wreq: decodes {'gzip': True, 'GZIP': False, 'gzip, gzip': False}
#   primp: decodes {'gzip': True, 'GZIP': False, 'gzip, gzip': False}
#   pyreqwest: decodes {'gzip': True, 'GZIP': False, 'gzip, gzip': False}
#   pyqwest: decodes {'gzip': True, 'GZIP': False, 'gzip, gzip': False}
