#!/usr/bin/env bash
# httpx and aiohttp do not see a Digest challenge behind Basic; digest-fetch answers Basic with a digest.
#
# Packages: httpx 0.28.1, aiohttp 3.14.5 (pip), digest-fetch 3.1.1 (npm).
# Guess: one field can hold several challenges (RFC 9110 11.6.1), and it means the same as two fields. A
#   client that was given credentials for Digest looks for that one: `Basic realm="x", Digest realm="r",
#   ...`.
# What happens: in two fields, httpx authenticates, in one it returns the 401; so does aiohttp, which does
#   not even see the second of two fields. digest-fetch sends `Authorization: Basic
#   username="user",realm="x",nonce=...`, with parts of both challenges.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    httpx==0.28.1 aiohttp==3.14.5 2>/dev/null
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$work" digest-fetch@3.1.1
cat > "$work/get.cjs" <<'NODE'
const module_ = require('digest-fetch');
const DigestFetch = module_.default || module_;
new DigestFetch('user', 'secret').fetch(process.argv[2]).then((response) => console.log(response.status));
NODE
"$work/venv/bin/python" - "$work/get.cjs" <<'PYTHON'
import asyncio
import http.server
import subprocess
import sys
import threading

CHALLENGES = ['Basic realm="x"', 'Digest realm="r", nonce="n", qop="auth"']


class Handler(http.server.BaseHTTPRequestHandler):
    given = ''

    def do_GET(self):
        Handler.given = self.headers.get('authorization', '')
        is_digest = Handler.given.startswith('Digest ') and 'realm="r"' in Handler.given
        self.send_response(200 if is_digest else 401)
        for value in CHALLENGES if self.path == '/two' else [', '.join(CHALLENGES)]:
            self.send_header('www-authenticate', value)
        self.send_header('content-length', '0')
        self.end_headers()

    def log_message(self, *_):
        pass


def with_httpx(url):
    import httpx
    return httpx.get(url, auth=httpx.DigestAuth('user', 'secret')).status_code


def with_aiohttp(url):
    import aiohttp

    async def get():
        middleware = aiohttp.DigestAuthMiddleware('user', 'secret')
        async with aiohttp.ClientSession(middlewares=[middleware]) as session, session.get(url) as response:
            return response.status
    return asyncio.run(get())


def with_digest_fetch(url):
    return int(subprocess.run(['node', sys.argv[1], url], capture_output=True, check=True, text=True).stdout)


server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
for client, expected in ((with_httpx, [200, 401]), (with_aiohttp, [401, 401]),
                         (with_digest_fetch, [401, 401])):
    seen = [client(f'http://127.0.0.1:{server.server_port}/{path}') for path in ('two', 'one')]
    print(f'{client.__name__.removeprefix("with_")}: two fields {seen[0]}, one field {seen[1]}, '
          f'last authorization: {Handler.given[:35]!r}')
    assert seen == expected, seen
assert Handler.given.startswith('Basic username="user",realm="x"')
PYTHON
# Seen:
#   httpx: two fields 200, one field 401, last authorization: ''
#   aiohttp: two fields 401, one field 401, last authorization: ''
#   digest_fetch: two fields 401, one field 401, last authorization: 'Basic username="user",realm="x",non'
