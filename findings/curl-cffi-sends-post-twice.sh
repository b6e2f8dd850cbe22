#!/usr/bin/env bash
# curl_cffi sends a POST twice when a kept connection ends without a response.
#
# Package: curl_cffi 0.17.0.
# Guess: a request whose connection ends after it was sent is made again only if its method is idempotent
#   (RFC 9110 9.2.2): nobody knows if the server has acted on it. So a POST is sent once, and fails.
# What happens: on a connection that has served a request before, the POST is sent again, with its content,
#   although the server had received all of it, and even when the beginning of a status line had come. The
#   caller sees one failure, or one success.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check curl_cffi==0.17.0 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import http.server
import threading

from curl_cffi import requests


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    orders = []
    answer = b''

    def do_GET(self):
        self.send_response(200)
        self.send_header('content-length', '0')
        self.end_headers()

    def do_POST(self):
        self.orders.append(self.rfile.read(int(self.headers['content-length'])))
        if len(self.orders) == 1:
            self.wfile.write(self.answer)
            self.close_connection = True
        else:
            self.do_GET()

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = 'http://127.0.0.1:{}/'.format(server.server_port)

for Handler.answer in (b'', b'HTTP/1.1 20'):
    for is_kept in (False, True):
        Handler.orders = []
        with requests.Session() as session:
            if is_kept:
                session.get(url)
            try:
                outcome = session.post(url, data=b'one order').status_code
            except requests.exceptions.ConnectionError:
                outcome = 'ConnectionError'
        print(f'answer {Handler.answer!r}, {"kept" if is_kept else "new"} connection: '
              f'the server got {Handler.orders}, the caller {outcome}')
        assert Handler.orders == [b'one order'] * (2 if is_kept else 1)
        assert outcome == (200 if is_kept else 'ConnectionError')
PYTHON
# Seen:
#   answer b'', new connection: the server got [b'one order'], the caller ConnectionError
#   answer b'', kept connection: the server got [b'one order', b'one order'], the caller 200
#   answer b'HTTP/1.1 20', new connection: the server got [b'one order'], the caller ConnectionError
#   answer b'HTTP/1.1 20', kept connection: the server got [b'one order', b'one order'], the caller 200
