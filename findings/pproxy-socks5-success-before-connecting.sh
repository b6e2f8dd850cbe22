#!/usr/bin/env bash
# pproxy's SOCKS5 says "succeeded" before it has tried to connect.
#
# Package: pproxy 2.7.9; asked with PySocks 1.7.1.
# Guess: a reply of 0 (succeeded) to CONNECT is sent once the proxy is connected to the target, and a port
#   that refuses gets a reply of 5 (RFC 1928 6), which the client turns into "Connection refused".
# What happens: the reply is 0 for a port where nobody listens, and then the connection ends without a
#   byte. Code that retries what failed while connecting, and not what failed later, takes this for a
#   server that hung up after the request.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pproxy==2.7.9 PySocks==1.7.1 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import socket
import subprocess
import sys
import time

import socks


def free_port():
    with socket.create_server(('127.0.0.1', 0)) as sock:
        return sock.getsockname()[1]


proxy_port, nobody = free_port(), free_port()
proxy = subprocess.Popen([sys.executable, '-m', 'pproxy', '-l', f'socks5://127.0.0.1:{proxy_port}'],
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
try:
    for _ in range(100):
        try:
            socket.create_connection(('127.0.0.1', proxy_port), 1).close()
            break
        except OSError:
            time.sleep(0.1)
    sock = socks.socksocket()
    sock.set_proxy(socks.SOCKS5, '127.0.0.1', proxy_port)
    sock.settimeout(10)
    sock.connect(('127.0.0.1', nobody))
    print('connected to a port where nobody listens')
    data = sock.recv(100)
    print('then came', data)
    assert data == b''
    sock.close()
finally:
    proxy.terminate()
    proxy.wait()
PYTHON
# Seen:
#   connected to a port where nobody listens
#   then came b''
