#!/usr/bin/env bash
# Squid reads no other request of a connection on which it has refused one with more than 64 KiB of content.
#
# Package: squid 5.7-2+deb12u6 of Debian 12, with libecap3 1.0.1-3.4.
# Guess: a proxy that answers 403 or 407 before it has read the content, and says `Connection: keep-alive`,
#   reads the rest of that content, and then the next request. If it does not want to, it closes.
# What happens: with up to 64 KiB it does so. With more, the next request on the connection is never
#   answered, though all of the first one was sent, and the connection stays open. So a client that has
#   uploaded a file to be told that it needs credentials, and then sends it with them, waits for ever.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/archives/partial"
apt-get install --download-only --reinstall --no-install-recommends -qq -o Debug::NoLocking=1 \
    -o APT::Sandbox::User=root -o Dir::Cache::Archives="$work/archives" \
    squid=5.7-2+deb12u6 squid-common=5.7-2+deb12u6 libecap3 libltdl7 libnetfilter-conntrack3 \
    libnfnetlink0 libmnl0 squid-langpack >/dev/null
for package in "$work"/archives/*.deb; do dpkg -x "$package" "$work/root"; done
export LD_LIBRARY_PATH="$work/root/usr/lib/$(uname -m)-linux-gnu"
chmod -R a+rX "$work" && chmod a+rwx "$work"
python3 - "$work" <<'PYTHON'
import pathlib
import re
import socket
import subprocess
import sys
import time

work = pathlib.Path(sys.argv[1])
root = work / 'root'
with socket.create_server(('127.0.0.1', 0)) as sock:
    port = sock.getsockname()[1]
(work / 'conf').write_text(f'''
http_port 127.0.0.1:{port}
http_access deny all
pid_filename {work}/pid
cache_log {work}/cache.log
access_log none
cache deny all
memory_cache_shared off
pinger_enable off
coredump_dir {work}
mime_table {root}/usr/share/squid/mime.conf
icon_directory {root}/usr/share/squid/icons
error_directory {root}/usr/share/squid-langpack/templates
unlinkd_program {root}/usr/lib/squid/unlinkd
logfile_daemon {root}/usr/lib/squid/log_file_daemon
''')


def answer(sock):
    data = b''
    while b'\r\n\r\n' not in data:
        data += sock.recv(65536)
    head, _, rest = data.partition(b'\r\n\r\n')
    left = int(re.search(rb'(?i)content-length: (\d+)', head)[1]) - len(rest)
    while left:
        left -= len(sock.recv(left))
    connection = re.search(rb'(?i)\nconnection: ([^\r]*)', head)
    return head.split(b' ')[1].decode(), connection[1].decode()


def upload_twice(length):
    """What is answered to two requests on one connection, of which each is sent whole."""
    request = (b'PUT http://127.0.0.1/ HTTP/1.1\r\nHost: 127.0.0.1\r\n'
               b'Content-Length: %d\r\n\r\n' % length) + bytes(length)
    answers = []
    with socket.create_connection(('127.0.0.1', port), 10) as sock:
        for _ in range(2):
            sock.sendall(request)
            try:
                answers.append(answer(sock))
            except TimeoutError:
                answers.append('nothing in 10 seconds')
    return answers


squid = subprocess.Popen([root / 'usr/sbin/squid', '-N', '-f', work / 'conf'],
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
try:
    for _ in range(100):
        try:
            socket.create_connection(('127.0.0.1', port), 1).close()
            break
        except OSError:
            time.sleep(0.1)
    small, large = upload_twice(60_000), upload_twice(100_000)
    print('60,000 bytes:', *small)
    print('100,000 bytes:', *large)
    assert small == [('403', 'keep-alive')] * 2
    assert large == [('403', 'keep-alive'), 'nothing in 10 seconds']
finally:
    squid.kill()
    squid.wait()
PYTHON
# Seen:
#   60,000 bytes: ('403', 'keep-alive') ('403', 'keep-alive')
#   100,000 bytes: ('403', 'keep-alive') nothing in 10 seconds
