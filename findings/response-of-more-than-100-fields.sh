#!/usr/bin/env bash
# Five clients cannot read a response that has more than 100 (aiohttp: 128) fields.
#
# Packages: wreq 0.13.0, primp 2.0.1, pyreqwest 0.15.1, pyqwest 0.12.0, aiohttp 3.14.5; httpx2 2.16.2 beside them.
# Guess: what is limited is the size of the head in bytes, 8 KiB at the least. 150 short fields, 2 KiB in all, as
#   an object store returns for an object with much metadata, are fine.
# What happens: the number of fields is limited, too: with default settings the 101st (in aiohttp the 129th)
#   makes the whole response an error. Those on Rust do not say that it is about a limit.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    httpx2==2.16.2 wreq==0.13.0 primp==2.0.1 pyreqwest==0.15.1 pyqwest==0.12.0 aiohttp==3.14.5 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import asyncio
import http.server
import threading


class Handler(http.server.BaseHTTPRequestHandler):
    def send_response(self, code):
        self.send_response_only(code)

    def do_GET(self):
        self.send_response(200)
        self.send_header('content-length', '0')
        for number in range(1, int(self.path.strip('/'))):
            self.send_header(f'x-{number}', 'y')
        self.end_headers()

    def log_message(self, *_):
        pass


async def with_httpx2(url):
    import httpx2
    async with httpx2.AsyncClient() as client:
        return (await client.get(url)).status_code


async def with_aiohttp(url):
    import aiohttp
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status


async def with_wreq(url):
    import wreq
    return int((await wreq.Client().get(url)).status.as_int())


async def with_primp(url):
    import primp
    return primp.Client().get(url).status_code


async def with_pyreqwest(url):
    from pyreqwest.client import ClientBuilder
    async with ClientBuilder().build() as client:
        return (await client.get(url).build().send()).status


async def with_pyqwest(url):
    import pyqwest
    return (await pyqwest.Client().get(url)).status


def is_read(client, fields):
    try:
        return asyncio.run(client(f'http://127.0.0.1:{server.server_port}/{fields}')) == 200
    except Exception:
        return False


server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
for client, limit in ((with_httpx2, None), (with_aiohttp, 128), (with_wreq, 100), (with_primp, 100),
                      (with_pyreqwest, 100), (with_pyqwest, 100)):
    most = next((fields - 1 for fields in range(95, 151) if not is_read(client, fields)), None)
    print(f'{client.__name__.removeprefix("with_")}: at most', most or '150 or more')
    assert most == limit
PYTHON
# Seen:
#   httpx2: at most 150 or more
#   aiohttp: at most 128
#   wreq: at most 100
#   primp: at most 100
#   pyreqwest: at most 100
#   pyqwest: at most 100
