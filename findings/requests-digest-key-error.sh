#!/usr/bin/env bash
# requests and niquests raise KeyError for a Digest challenge in capitals, and give up at `auth-int, auth`.
#
# Packages: requests 2.34.2, niquests 3.21.2; httpx 0.28.1 beside them.
# Guess: names of parameters are case-insensitive (RFC 9110 11.2), and `qop` is a list, in which a space may
#   follow the comma (RFC 7616 3.3). If something is wrong, it is an exception of the package.
# What happens: `Digest Realm="r", ...` is KeyError: 'realm', which no `except RequestException` catches.
#   For `qop="auth-int, auth"` no second request is sent, as ` auth` is not `auth`; the caller gets the 401.
#   httpx reads the list; it does not read the capitals either, but raises its own exception.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    requests==2.34.2 niquests==3.21.2 httpx==0.28.1 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import http.server
import threading

import httpx
import niquests
import requests

CHALLENGES = {
    '/plain': 'Digest realm="r", nonce="n", qop="auth"',
    '/list': 'Digest realm="r", nonce="n", qop="auth-int, auth"',
    '/capitals': 'Digest Realm="r", Nonce="n", Qop="auth"',
}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if 'qop="auth"' in self.headers.get('authorization', '').replace('qop=auth,', 'qop="auth",'):
            self.send_response(200)
        else:
            self.send_response(401)
            self.send_header('www-authenticate', CHALLENGES[self.path])
        self.send_header('content-length', '0')
        self.end_headers()

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
for package, auth, expected in (
    (httpx, httpx.DigestAuth, [200, 200, 'ProtocolError']),
    (requests, requests.auth.HTTPDigestAuth, [200, 401, 'KeyError']),
    (niquests, niquests.auth.HTTPDigestAuth, [200, 401, 'KeyError']),
):
    seen = []
    for path in CHALLENGES:
        try:
            url = f'http://127.0.0.1:{server.server_port}{path}'
            seen.append(package.get(url, auth=auth('user', 'secret')).status_code)
        except Exception as error:
            seen.append(type(error).__name__)
    print(f'{package.__name__}:', dict(zip(CHALLENGES, seen)))
    assert seen == expected
PYTHON
# Seen:
#   httpx: {'/plain': 200, '/list': 200, '/capitals': 'ProtocolError'}
#   requests: {'/plain': 200, '/list': 401, '/capitals': 'KeyError'}
#   niquests: {'/plain': 200, '/list': 401, '/capitals': 'KeyError'}
