#!/usr/bin/env bash
# NSD limits answers to 200 a second unless it is told otherwise, and for all clients in a /24 together.
#
# Package: nsd 4.6.1-1 of Debian 12, which the script needs; asked with dnslib 0.9.26.
# Guess: a nameserver answers as many queries as it can. A limit of the rate has to be turned on, as with
#   BIND and Knot DNS. And if there is one, it is for the client that asks too often.
# What happens: `rrl-ratelimit` is 200, and counts answers that are the same, for all of a /24. Of what is
#   beyond it, half is not answered and the rest is truncated and empty, so that clients come by TCP. All
#   names of a wildcard count as the same answer. While one client is busy, another one that asks for the
#   first time gets no answer or an empty one, if it is in the same /24.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/archives/partial"
apt-get install --download-only --reinstall --no-install-recommends -qq -o Debug::NoLocking=1 \
    -o APT::Sandbox::User=root -o Dir::Cache::Archives="$work/archives" nsd=4.6.1-1 >/dev/null
for package in "$work"/archives/*.deb; do dpkg -x "$package" "$work/root"; done
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check dnslib==0.9.26 2>/dev/null
export LD_LIBRARY_PATH="$work/root/usr/lib/$(uname -m)-linux-gnu"
"$work/venv/bin/python" - "$work" <<'PYTHON'
import collections
import pathlib
import socket
import subprocess
import sys
import time

import dnslib

work = pathlib.Path(sys.argv[1])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.bind(('127.0.0.1', 0))
    port = sock.getsockname()[1]
hosts = ''.join(f'host{number} 60 IN A 192.0.2.1\n' for number in range(20))
(work / 'zone').write_text(f'''$ORIGIN names.example.
@ 3600 IN SOA ns hostmaster 1 3600 600 86400 60
@ 3600 IN NS ns
ns 3600 IN A 192.0.2.53
*.wild 60 IN A 192.0.2.1
{hosts}''')
# Nothing here is about rates.
(work / 'conf').write_text(f'''
server:
    ip-address: 127.0.0.1@{port}
    username: ""
    chroot: ""
    zonesdir: "{work}"
    database: ""
    pidfile: "{work}/pid"
    xfrdfile: "{work}/xfrd"
    xfrdir: "{work}"
    zonelistfile: "{work}/list"
    server-count: 1
remote-control:
    control-enable: no
zone:
    name: names.example
    zonefile: zone
''')


def ask(client, name_of, queries=1000):
    """Ask 500 times a second. How many were answered, truncated and not answered."""
    seen = collections.Counter()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((client, 0))
        sock.connect(('127.0.0.1', port))
        sock.settimeout(0.002)
        begin, sent = time.monotonic(), 0
        while (passed := time.monotonic() - begin) < queries / 500 + 0.3:
            while sent < min(passed * 500, queries):
                query = dnslib.DNSRecord.question(f'{name_of(sent)}.names.example', 'A')
                sock.send(query.pack())
                sent += 1
            try:
                header = dnslib.DNSRecord.parse(sock.recv(4096)).header
                seen['truncated' if header.tc and not header.a else 'answered'] += 1
            except (TimeoutError, ConnectionRefusedError):
                pass
    seen['no answer'] = sent - seen.total()
    return dict(seen)


nsd = subprocess.Popen([work / 'root/usr/sbin/nsd', '-d', '-c', work / 'conf'],
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
try:
    while 'answered' not in ask('127.0.0.1', lambda number: 'host0', 1):
        pass
    seen = ask('127.0.0.1', lambda number: f'host{number % 20}')
    print('1,000 queries for twenty hosts:', seen)
    assert seen == {'answered': 1000, 'no answer': 0}
    seen = ask('127.0.0.1', lambda number: f'host{number}.wild')
    print('1,000 queries for names of a wildcard:', seen)
    assert seen['answered'] < 600 and seen['truncated'] > 100 and seen['no answer'] > 100
    seen = ask('127.0.0.9', lambda number: f'other{number}.wild', 10)
    print('10 queries of another client in the same /24:', seen)
    assert 'answered' not in seen
    seen = ask('127.0.1.9', lambda number: f'other{number}.wild', 10)
    print('10 queries of a client in another /24:', seen)
    assert seen == {'answered': 10, 'no answer': 0}
finally:
    nsd.terminate()
    nsd.wait()
PYTHON
# Seen:
#   1,000 queries for twenty hosts: {'answered': 1000, 'no answer': 0}
#   1,000 queries for names of a wildcard: {'answered': 399, 'truncated': 314, 'no answer': 287}
#   10 queries of another client in the same /24: {'truncated': 7, 'no answer': 3}
#   10 queries of a client in another /24: {'answered': 10, 'no answer': 0}
