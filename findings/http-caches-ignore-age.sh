#!/usr/bin/env bash
# requests-cache and CacheControl serve a response that was stale when it came.
#
# Packages: requests-cache 1.3.3 (with cache_control=True), CacheControl 0.14.4.
# Guess: `Age` counts (RFC 9111 4.2.3): a response with `max-age=60` that a CDN has had for 50 seconds is
#   fresh for ten more, and one with `Age: 100` is not fresh at all, so the next request goes to the server.
# What happens: both begin to count anew and give the response from their cache. CacheControl at least looks
#   at `Date`, which a CDN usually passes on from the origin; requests-cache looks at neither. Behind a
#   shared cache everything lives up to twice as long as its author allowed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    requests-cache==1.3.3 CacheControl==0.14.4 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import email.utils
import http.server
import threading
import time

import requests
import requests_cache
from cachecontrol import CacheControl


class Handler(http.server.BaseHTTPRequestHandler):
    requests = 0

    def do_GET(self):
        Handler.requests += 1
        self.send_response_only(200)
        if self.path == '/old-date':
            self.send_header('date', email.utils.formatdate(time.time() - 100, usegmt=True))
        else:
            self.send_header('date', email.utils.formatdate(usegmt=True))
        self.send_header('age', '100')
        self.send_header('cache-control', 'max-age=60')
        self.send_header('content-length', '0')
        self.end_headers()

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
for name, session, expected in (
    ('requests-cache', requests_cache.CachedSession(backend='memory', cache_control=True), [1, 1]),
    ('CacheControl', CacheControl(requests.Session()), [1, 2]),
):
    seen = []
    for path in ('/date-of-now', '/old-date'):
        Handler.requests = 0
        for _ in range(2):
            session.get(f'http://127.0.0.1:{server.server_port}{path}')
        seen.append(Handler.requests)
        print(f'{name}, {path}: 2 calls, {Handler.requests} request(s)')
    assert seen == expected
PYTHON
# Seen:
#   requests-cache, /date-of-now: 2 calls, 1 request(s)
#   requests-cache, /old-date: 2 calls, 1 request(s)
#   CacheControl, /date-of-now: 2 calls, 1 request(s)
#   CacheControl, /old-date: 2 calls, 2 request(s)
