#!/usr/bin/env bash
# WsgiDAV says 100 Continue to whoever is not logged in, takes the whole upload, and then says 401.
#
# Packages: WsgiDAV 4.4.0 on cheroot 11.1.2, as `wsgidav` runs it.
# Guess: with `expect: 100-continue` a client sends the head alone, and a server that wants a login answers it with
#   401 before any content: that is what the field is for (RFC 9110 10.1.1).
# What happens: 100 comes at once, and 401 only when all of the content has been sent. A client whose digest
#   starts with a 401, as each must, sends a large file twice. A small request first costs less.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check wsgidav==4.4.0 cheroot==11.1.2 2>/dev/null
mkdir "$work/files"
"$work/venv/bin/python" - "$work/files" <<'PYTHON'
import socket
import sys
import threading

from cheroot import wsgi
from wsgidav.wsgidav_app import WsgiDAVApp

app = WsgiDAVApp({
    'provider_mapping': {'/': sys.argv[1]},
    'simple_dc': {'user_mapping': {'*': {'user': {'password': 'password'}}}},
    'http_authenticator': {'accept_basic': False, 'accept_digest': True, 'default_to_digest': True},
    'logging': {'enable': False}, 'verbose': 0,
})
server = wsgi.Server(('127.0.0.1', 0), app)
server.prepare()
threading.Thread(target=server.serve, daemon=True).start()

LENGTH = 1024 * 1024
with socket.create_connection(server.bind_addr, 10) as sock:
    sock.sendall(b'PUT /file HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n'
                 b'Expect: 100-continue\r\n\r\n' % LENGTH)
    first = sock.recv(65536)
    print('after the head:', first)
    assert first == b'HTTP/1.1 100 Continue\r\n\r\n'
    sock.sendall(bytes(LENGTH - 1))
    sock.settimeout(2)
    try:
        early = sock.recv(65536)
    except TimeoutError:
        early = b'nothing'
    print('before the last byte:', early)
    assert early == b'nothing'
    sock.settimeout(10)
    sock.sendall(b'.')
    status = sock.recv(65536).split(b'\r\n')[0]
    print('after the last byte:', status)
    assert status.startswith(b'HTTP/1.1 401 ')
server.stop()
PYTHON
# Seen:
#   after the head: b'HTTP/1.1 100 Continue\r\n\r\n'
#   before the last byte: b'nothing'
#   after the last byte: b'HTTP/1.1 401 Not Authorized'
