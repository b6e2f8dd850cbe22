#!/usr/bin/env bash
# openai's aiohttp client sends other URLs than the ones it is given.
#
# Package: openai 3.57.0, its `DefaultAioHttpClient` (with httpx2 2.16.2, aiohttp 3.14.5).
# Guess: a transport sends the target that httpx2 has made of the URL, byte by byte, as the stock client
#   `DefaultAsyncHttpxClient` does. It matters for what is signed, and for names with an encoded slash in them.
# What happens: the URL is parsed once more, by yarl, which decodes what need not be encoded. `%2F` and `%3A` in a
#   query become `/` and `:`, and `%7E` becomes `~`. `%2E%2E` in a path is taken for `..`, so the segment before it
#   is gone, and another resource is asked for.
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

CASES = {
    '/files?name=a%2Fb': '/files?name=a/b',
    '/files?from=2026-11-01T12%3A00': '/files?from=2026-11-01T12:00',
    '/%7Euser': '/~user',
    '/files/%2E%2E/users': '/users',
}
seen = []


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        seen.append(self.path)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args):
        pass


async def main(origin):
    for given, expected in CASES.items():
        seen.clear()
        for make_client in (DefaultAsyncHttpxClient, DefaultAioHttpClient):
            async with make_client() as client:
                await client.get(origin + given)
        print(given, '->', *seen)
        assert seen == [given, expected], expected


with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    asyncio.run(main(f'http://127.0.0.1:{server.server_port}'))
    server.shutdown()
PYTHON
# Seen, the given one, that of the stock client, and that of the aiohttp client:
#   /files?name=a%2Fb -> /files?name=a%2Fb /files?name=a/b
#   /files?from=2026-11-01T12%3A00 -> /files?from=2026-11-01T12%3A00 /files?from=2026-11-01T12:00
#   /%7Euser -> /%7Euser /~user
#   /files/%2E%2E/users -> /files/%2E%2E/users /users
