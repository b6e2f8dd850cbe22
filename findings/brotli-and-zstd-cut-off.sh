#!/usr/bin/env bash
# Compressed content that was cut off is an empty body, and no error, in aiohttp and curl_cffi.
#
# Packages: aiohttp 3.14.5 with Brotli 1.2.0 and backports.zstd 1.6.0, curl_cffi 0.17.0; pyqwest 0.12.0 beside them.
# Guess: a server that compressed half of its content and then told a length that fits (a worker that was
#   killed, a proxy that buffered what it got) is noticed by whoever decodes: the last block is missing.
# What happens: pyqwest raises. aiohttp and curl_cffi return what came out so far, which for a small body is
#   nothing: `b''`, with status 200.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    aiohttp==3.14.5 curl_cffi==0.17.0 pyqwest==0.12.0 Brotli==1.2.0 backports.zstd==1.6.0 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import asyncio
import http.server
import threading

import brotli
from backports import zstd

CONTENT = b'a line of some length\n' * 30
CODED = {'br': brotli.compress(CONTENT), 'zstd': zstd.compress(CONTENT)}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        coding, _, cut = self.path.strip('/').partition('-')
        data = CODED[coding][:-5] if cut else CODED[coding]
        self.send_response(200)
        self.send_header('content-encoding', coding)
        self.send_header('content-length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


async def with_aiohttp(url):
    import aiohttp
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return await response.read()


async def with_curl_cffi(url):
    import curl_cffi.requests
    return curl_cffi.requests.get(url).content


async def with_pyqwest(url):
    import pyqwest
    return (await pyqwest.Client().get(url)).content


server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
for client, expected in ((with_aiohttp, b''), (with_curl_cffi, b''), (with_pyqwest, 'an error')):
    for coding in CODED:
        url = f'http://127.0.0.1:{server.server_port}/{coding}'
        assert asyncio.run(client(url)) == CONTENT
        try:
            outcome = asyncio.run(client(url + '-cut'))
        except Exception:
            outcome = 'an error'
        print(f'{client.__name__.removeprefix("with_")}, {coding}, 5 bytes short: {outcome!r}')
        assert outcome == expected
PYTHON
# Seen:
#   aiohttp, br, 5 bytes short: b''
#   aiohttp, zstd, 5 bytes short: b''
#   curl_cffi, br, 5 bytes short: b''
#   curl_cffi, zstd, 5 bytes short: b''
#   pyqwest, br, 5 bytes short: 'an error'
#   pyqwest, zstd, 5 bytes short: 'an error'
