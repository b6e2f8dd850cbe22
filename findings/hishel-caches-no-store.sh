#!/usr/bin/env bash
# hishel 2 gives a `no-store` response from its cache, and the same one in every language.
#
# Package: hishel 2.0.0 with httpx 0.28.1; hishel 1.1.8 beside it.
# Guess: hishel's cache for httpx goes by RFC 9111 unless it is told otherwise, as version 1 does:
#   `no-store` is not stored, `max-age=0` is asked for again, and a response with `Vary: Accept-Language` is
#   for one language.
# What happens: since version 2 that must be asked for with `rfc=True`. `CacheClient()` keeps every
#   successful GET by its address, whatever the fields say.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/test.py" <<'PYTHON'
import http.server
import sys
import threading

import hishel
from hishel import httpx as hishel_httpx

FIELDS = {
    '/no-store': ('cache-control', 'no-store'),
    '/max-age=0': ('cache-control', 'max-age=0'),
    '/vary': ('vary', 'accept-language'),
}


class Handler(http.server.BaseHTTPRequestHandler):
    requests = 0

    def do_GET(self):
        Handler.requests += 1
        self.send_response(200)
        self.send_header(*FIELDS[self.path])
        if self.path == '/vary':
            self.send_header('cache-control', 'max-age=60')
        self.send_header('content-length', '0')
        self.end_headers()

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
Client, Storage = (
    (hishel_httpx.CacheClient, hishel.SqliteStorage) if sys.argv[1] == '2' else
    (hishel_httpx.SyncCacheClient, hishel.SyncSqliteStorage))
seen = {}
for options in [{}, {'rfc': True}] if sys.argv[1] == '2' else [{}]:
    for path in FIELDS:
        Handler.requests = 0
        storage = Storage(database_path=f'{sys.argv[2]}/{len(seen)}')
        with Client(storage=storage, **options) as client:
            for language in ('en', 'de'):
                url = f'http://127.0.0.1:{server.server_port}{path}'
                client.get(url, headers={'accept-language': language})
        seen[path, bool(options)] = Handler.requests
        print(f'hishel {sys.argv[1]}, {options}, {path}: 2 calls, {Handler.requests} request(s)')
        assert Handler.requests == (1 if sys.argv[1] == '2' and not options else 2)
PYTHON
for version in 1.1.8 2.0.0; do
    python3 -m venv "$work/venv-$version"
    "$work/venv-$version/bin/pip" install --quiet --disable-pip-version-check \
        "hishel[httpx]==$version" httpx==0.28.1 2>/dev/null
    mkdir "$work/data-$version"
    "$work/venv-$version/bin/python" "$work/test.py" "${version%%.*}" "$work/data-$version"
done
# Seen:
#   hishel 1, {}, /no-store: 2 calls, 2 request(s)
#   hishel 1, {}, /max-age=0: 2 calls, 2 request(s)
#   hishel 1, {}, /vary: 2 calls, 2 request(s)
#   hishel 2, {}, /no-store: 2 calls, 1 request(s)
#   hishel 2, {}, /max-age=0: 2 calls, 1 request(s)
#   hishel 2, {}, /vary: 2 calls, 1 request(s)
#   hishel 2, {'rfc': True}, /no-store: 2 calls, 2 request(s)
#   hishel 2, {'rfc': True}, /max-age=0: 2 calls, 2 request(s)
#   hishel 2, {'rfc': True}, /vary: 2 calls, 2 request(s)
