#!/usr/bin/env bash
# tinyproxy answers wrong credentials of a proxy with 401, as if the server had refused them.
#
# Package: tinyproxy-bin 1.11.1-2.1+deb12u1 of Debian 12.
# Guess: a proxy answers 407 with `proxy-authenticate` as long as it gets no good `proxy-authorization`
#   (RFC 9110 11.7.1), whether it got none or a wrong one.
# What happens: without credentials it is 407. With wrong ones it is 401 with `www-authenticate`. A client
#   that only knows the status takes this for an answer of the server: it asks its user for the server's
#   password, or renews a token of the server, and sends that to the server that has never been asked.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/archives/partial"
apt-get install --download-only --reinstall --no-install-recommends -qq -o Debug::NoLocking=1 \
    -o APT::Sandbox::User=root -o Dir::Cache::Archives="$work/archives" \
    tinyproxy-bin=1.11.1-2.1+deb12u1 >/dev/null
for package in "$work"/archives/*.deb; do dpkg -x "$package" "$work/root"; done
python3 - "$work" <<'PYTHON'
import base64
import pathlib
import socket
import subprocess
import sys
import time

work = pathlib.Path(sys.argv[1])
with socket.create_server(('127.0.0.1', 0)) as sock:
    port = sock.getsockname()[1]
(work / 'conf').write_text(
    f'Port {port}\nListen 127.0.0.1\nTimeout 60\nMaxClients 10\nBasicAuth user password\n')


def ask(credentials):
    field = b'' if credentials is None else \
        b'Proxy-Authorization: Basic ' + base64.b64encode(credentials) + b'\r\n'
    with socket.create_connection(('127.0.0.1', port), 10) as sock:
        sock.sendall(b'GET http://127.0.0.1:%d/ HTTP/1.1\r\nHost: 127.0.0.1\r\n%b\r\n' % (port, field))
        head = b''.join(iter(lambda: sock.recv(65536), b'')).partition(b'\r\n\r\n')[0].decode()
    status_line, *fields = head.splitlines()
    return status_line.split(' ')[1], [
        field.partition(':')[0] for field in fields if 'authenticate' in field.lower()]


proxy = subprocess.Popen([work / 'root/usr/bin/tinyproxy', '-d', '-c', work / 'conf'],
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
try:
    for _ in range(100):
        try:
            socket.create_connection(('127.0.0.1', port), 1).close()
            break
        except OSError:
            time.sleep(0.1)
    without, wrong = ask(None), ask(b'user:wrong')
    print('without credentials:', *without)
    print('with wrong credentials:', *wrong)
    assert without == ('407', ['Proxy-Authenticate'])
    assert wrong == ('401', ['WWW-Authenticate'])
finally:
    proxy.terminate()
    proxy.wait()
PYTHON
# Seen:
#   without credentials: 407 ['Proxy-Authenticate']
#   with wrong credentials: 401 ['WWW-Authenticate']
