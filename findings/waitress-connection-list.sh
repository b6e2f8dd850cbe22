#!/usr/bin/env bash
# waitress understands `connection: close`, but not a list that has `close` in it.
#
# Package: waitress 3.0.2.
# Guess: `Connection: te, close` closes as `Connection: close` does: the field is a list of tokens
#   (RFC 9110 7.6.1), and clients that send `te` list both.
# What happens: it compares the whole value. With the list, the connection stays open and the response
#   does not say `close`, so a client that waits for the end waits for the server's idle time-out.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check waitress==3.0.2 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import socket
import threading

import waitress


def app(environ, start_response):
    start_response('200 OK', [('Content-Length', '5')])
    return [b'hello']


server = waitress.create_server(app, host='127.0.0.1', port=0)
threading.Thread(target=server.run, daemon=True).start()


def ask(value):
    """The response, and whether the server has closed a second later."""
    with socket.create_connection(('127.0.0.1', server.effective_port), 10) as sock:
        sock.sendall(b'GET / HTTP/1.1\r\nHost: localhost\r\nTE: trailers\r\nConnection: %b\r\n\r\n'
                     % value)
        data = b''
        while not data.endswith(b'hello'):
            data += sock.recv(1000)
        sock.settimeout(1)
        try:
            return data, sock.recv(1000) == b''
        except TimeoutError:
            return data, False


for value, closes in ((b'close', True), (b'te, close', False)):
    data, is_closed = ask(value)
    says_so = b'connection: close' in data.lower()
    print(f'Connection: {value.decode()}: says close: {says_so}, closes: {is_closed}')
    assert is_closed == says_so == closes
PYTHON
# Seen:
#   Connection: close: says close: True, closes: True
#   Connection: te, close: says close: False, closes: False
