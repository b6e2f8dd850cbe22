#!/usr/bin/env bash
# curl_cffi takes a response head that was cut off for a whole, empty response.
#
# Package: curl_cffi 0.17.0.
# Guess: a connection that ends before the empty line after the fields is a failed request: an incomplete
#   message is not to be taken for a complete one (RFC 9112 8). aiohttp, httpx2 and requests raise.
# What happens: the caller gets status 200 and an empty body, even if the end came in the middle of a field
#   line. A server that died before it wrote `content-length` looks like one that had nothing to say.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check curl_cffi==0.17.0 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import socket
import threading

from curl_cffi import requests

HEADS = [b'HTTP/1.1 200 OK\r\nserver: x\r\n', b'HTTP/1.1 200 OK\r\nserver: ']
outcomes = []
with socket.create_server(('127.0.0.1', 0)) as server:
    def serve():
        for head in HEADS:
            sock, _ = server.accept()
            while not sock.recv(65536).endswith(b'\r\n\r\n'):
                pass
            sock.sendall(head)
            sock.close()

    threading.Thread(target=serve, daemon=True).start()
    for head in HEADS:
        try:
            response = requests.get('http://127.0.0.1:{}/'.format(server.getsockname()[1]), timeout=10)
            outcomes.append((response.status_code, response.content))
        except requests.exceptions.RequestException as error:
            outcomes.append(type(error).__name__)
        print(f'{head!r}, and the end: {outcomes[-1]}')
assert outcomes == [(200, b''), (200, b'')], outcomes
PYTHON
# Seen:
#   b'HTTP/1.1 200 OK\r\nserver: x\r\n', and the end: (200, b'')
#   b'HTTP/1.1 200 OK\r\nserver: ', and the end: (200, b'')
