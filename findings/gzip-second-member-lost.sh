#!/usr/bin/env bash
# Five clients return the first member of a gzip body and drop the rest, without an error.
#
# Packages: httpx2 2.16.2, wreq 0.13.0, primp 2.0.1, pyreqwest 0.15.1, pyqwest 0.12.0.
# Guess: gzip content is a series of members (RFC 1952 2.2), as log files that were appended to and what
#   `pigz` or `bgzip` writes are. A client that decodes `content-encoding: gzip` decodes all of it, as aiohttp
#   3.14.5 and requests 2.34.2 do, or raises.
# What happens: these five return the content of the first member as a whole response.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    httpx2==2.16.2 wreq==0.13.0 primp==2.0.1 pyreqwest==0.15.1 pyqwest==0.12.0 aiohttp==3.14.5 \
    requests==2.34.2 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import asyncio
import gzip
import http.server
import threading

CONTENT = gzip.compress(b'first ') + gzip.compress(b'second')


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header('content-encoding', 'gzip')
        self.send_header('content-length', str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, *_):
        pass


async def with_aiohttp(url):
    import aiohttp
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return await response.read()


async def with_requests(url):
    import requests
    return requests.get(url, timeout=10).content


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
url = f'http://127.0.0.1:{server.server_port}/'
WHOLE, FIRST = b'first second', b'first '
for client, expected in ((with_aiohttp, WHOLE), (with_requests, WHOLE), (with_httpx2, FIRST),
                         (with_wreq, FIRST), (with_primp, FIRST), (with_pyreqwest, FIRST),
                         (with_pyqwest, FIRST)):
    content = bytes(asyncio.run(client(url)))
    print(f'{client.__name__.removeprefix("with_")}: {content!r}')
    assert content == expected
PYTHON
# Seen:
#   aiohttp: b'first second'
#   requests: b'first second'
#   httpx2: b'first '
#   wreq: b'first '
#   primp: b'first '
#   pyreqwest: b'first '
#   pyqwest: b'first '
