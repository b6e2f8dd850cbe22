#!/usr/bin/env bash
# primp sends cookies in another order each time, and pyreqwest and impit send the outermost path first.
#
# Packages: primp 2.0.1, pyreqwest 0.15.1, impit 0.15.1, aiohttp 3.14.5; httpx2 2.16.2, niquests 3.21.2 and
#   wreq 0.13.0 beside them.
# Guess: a client that keeps cookies sends the ones with the longer path first, and of one path the older
#   first (RFC 6265 5.4). A path can set a cookie over one of the same name at `/`: servers that take the
#   first of a name, such as those on Go's net/http or Node's cookie package, see the one of the path.
# What happens: so do httpx2, niquests and wreq. With primp it is chance which of the three is first, from
#   one client to the next in the same program. pyreqwest and impit send the one of `/` first: a session
#   below `/app` is that of `/`. aiohttp sends only one of each name, behind those of shorter paths.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check primp==2.0.1 pyreqwest==0.15.1 \
    impit==0.15.1 aiohttp==3.14.5 httpx2==2.16.2 niquests==3.21.2 wreq==0.13.0 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import asyncio
import http.cookiejar
import http.server
import threading

import aiohttp
import httpx2
import impit
import niquests
import primp
import wreq
from pyreqwest.client import ClientBuilder

COOKIES = ('s=root; Path=/', 's=app; Path=/app', 'a=1; Path=/', 'b=2; Path=/', 's=deep; Path=/app/deep')
BY_PATH = 's=deep; s=app; s=root; a=1; b=2'
ROOT_FIRST = 's=root; a=1; b=2; s=app; s=deep'
received = []


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        if self.path == '/app/login':
            for cookie in COOKIES:
                self.send_header('set-cookie', cookie)
        else:
            received.append(self.headers['cookie'])
        self.send_header('content-length', '0')
        self.end_headers()

    def log_message(self, *_):
        pass


async def with_httpx2(urls):
    async with httpx2.AsyncClient() as client:
        for url in urls:
            await client.get(url)


async def with_niquests(urls):
    with niquests.Session() as session:
        for url in urls:
            session.get(url)


async def with_wreq(urls):
    client = wreq.Client(cookie_store=True)
    for url in urls:
        await client.get(url)


async def with_primp(urls):
    client = primp.Client(cookie_store=True)
    for url in urls:
        client.get(url)


async def with_pyreqwest(urls):
    async with ClientBuilder().default_cookie_store(True).build() as client:
        for url in urls:
            await client.get(url).build().send()


async def with_impit(urls):
    client = impit.Client(cookie_jar=http.cookiejar.CookieJar())
    for url in urls:
        client.get(url)


async def with_aiohttp(urls):
    # unsafe: cookies of hosts that are IP addresses
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        for url in urls:
            async with session.get(url):
                pass


server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
origin = f'http://127.0.0.1:{server.server_port}'
for client, expected in (
    (with_httpx2, BY_PATH), (with_niquests, BY_PATH), (with_wreq, BY_PATH), (with_primp, None),
    (with_pyreqwest, ROOT_FIRST), (with_impit, ROOT_FIRST), (with_aiohttp, 'a=1; b=2; s=deep'),
):
    received.clear()
    for _ in range(30 if expected is None else 3):
        asyncio.run(client([f'{origin}/app/login', f'{origin}/app/deep/page']))
    name = client.__name__.removeprefix('with_')
    if expected is None:
        assert {tuple(sorted(cookies.split('; '))) for cookies in received} == {
            ('a=1', 'b=2', 's=app', 's=deep', 's=root')}
        firsts = {next(c for c in cookies.split('; ') if c.startswith('s=')) for cookies in received}
        print(f'{name}: more than one order, first of the name s:', ' or '.join(sorted(firsts)))
        assert firsts == {'s=app', 's=deep', 's=root'}
    else:
        print(f'{name}: {received[0]}')
        assert set(received) == {expected}
PYTHON
# Seen:
#   httpx2: s=deep; s=app; s=root; a=1; b=2
#   niquests: s=deep; s=app; s=root; a=1; b=2
#   wreq: s=deep; s=app; s=root; a=1; b=2
#   primp: more than one order, first of the name s: s=app or s=deep or s=root
#   pyreqwest: s=root; a=1; b=2; s=app; s=deep
#   impit: s=root; a=1; b=2; s=app; s=deep
#   aiohttp: a=1; b=2; s=deep
