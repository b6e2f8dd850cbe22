#!/usr/bin/env bash
# openai's aiohttp client still sends cookies that were cleared.
#
# Package: openai 3.57.0, its `DefaultAioHttpClient` (with httpx2 2.16.2, aiohttp 3.14.5).
# Guess: an httpx2 client has one jar, `client.cookies`. After `client.cookies.clear()` no cookie is sent, whatever
#   the transport.
# What happens: the session of aiohttp below it has a jar of its own, which takes each `set-cookie` too, and which
#   nobody can reach through the client. So the cookie of the first user is sent with the next one's request.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    'openai[aiohttp]==3.57.0' httpx2==2.16.2 aiohttp==3.14.5 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import asyncio
import http.server
import threading

from openai import DefaultAioHttpClient, DefaultAsyncHttpxClient

EXPECTED = {DefaultAsyncHttpxClient: [None, None], DefaultAioHttpClient: [None, 'session=first']}
seen = []


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        seen.append(self.headers.get('cookie'))
        self.send_response(204)
        if self.path == '/login':
            self.send_header('set-cookie', 'session=first; Path=/')
        self.end_headers()

    def log_message(self, *args):
        pass


async def main(origin):
    for make_client, expected in EXPECTED.items():
        seen.clear()
        async with make_client() as client:
            await client.get(origin + '/login')
            client.cookies.clear()
            await client.get(origin + '/next')
        print(make_client.__name__, seen)
        assert seen == expected, expected


with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    asyncio.run(main(f'http://localhost:{server.server_port}'))
    server.shutdown()
PYTHON
# Seen, the cookie of each request:
#   _DefaultAsyncHttpxClient [None, None]
#   _InstalledAioHttpClient [None, 'session=first']
