#!/usr/bin/env bash
# requests-cache still gives the old page after it was changed, and CacheControl does so after a POST.
#
# Packages: requests-cache 1.3.3 (with cache_control=True), CacheControl 0.14.4.
# Guess: a cache must forget what it has of an address when a PUT, POST or DELETE to it succeeded (RFC 9111
#   4.4). Who changes a page through a session sees the change through that session.
# What happens: requests-cache forgets nothing, whatever the method: until max-age is over the page is the
#   old one, or is still there. CacheControl forgets after PUT and DELETE, but not after POST.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    requests-cache==1.3.3 CacheControl==0.14.4 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import http.server
import threading

import requests
import requests_cache
from cachecontrol import CacheControl


class Handler(http.server.BaseHTTPRequestHandler):
    page = b''

    def answer(self):
        self.send_response(200)
        self.send_header('cache-control', 'max-age=60')
        self.send_header('content-length', str(len(self.page)))
        self.end_headers()
        self.wfile.write(self.page)

    def change(self):
        Handler.page = b'new'
        self.answer()

    do_GET = answer
    do_POST = do_PUT = do_DELETE = change

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
for name, session, expected in (
    ('requests-cache', requests_cache.CachedSession(backend='memory', cache_control=True), ['old'] * 3),
    ('CacheControl', CacheControl(requests.Session()), ['old', 'new', 'new']),
):
    seen = []
    for method in ('POST', 'PUT', 'DELETE'):
        Handler.page = b'old'
        url = f'http://127.0.0.1:{server.server_port}/{method}'
        assert session.get(url).text == 'old'
        assert session.request(method, url).text == 'new'
        seen.append(session.get(url).text)
    print(f'{name}: after POST, PUT, DELETE: {seen}')
    assert seen == expected
PYTHON
# Seen:
#   requests-cache: after POST, PUT, DELETE: ['old', 'old', 'old']
#   CacheControl: after POST, PUT, DELETE: ['old', 'new', 'new']
