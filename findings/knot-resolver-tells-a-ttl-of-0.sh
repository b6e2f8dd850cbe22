#!/usr/bin/env bash
# Knot Resolver keeps short-lived records for five seconds, and tells everybody but the first who asks that
# they last for no time.
#
# Package: knot-resolver 5.6.0-1+deb12u1 of Debian 12, which the script needs, with Linux 5.11 or newer; asked
#   with dnslib 0.9.26.
# Guess: a cache that raises times to live (`cache.min_ttl`, 5 seconds by default) tells all clients what is
#   left of the raised time: 5, then 4, then 3. Or it keeps to the record, and asks again after a second.
# What happens: the first to ask is told 5. Those who ask later get the same record from the cache, but are
#   told what is left of the original time: for a TTL of 1 or 0 that is 0 until the five seconds are over.
#   So a client that keeps to the TTL either uses a record of TTL 1 for five seconds, or asks each time.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/archives/partial"
apt-get install --download-only --reinstall --no-install-recommends -qq -o Debug::NoLocking=1 \
    -o APT::Sandbox::User=root -o Dir::Cache::Archives="$work/archives" \
    knot-resolver=5.6.0-1+deb12u1 >/dev/null
for package in "$work"/archives/*.deb; do dpkg -x "$package" "$work/root"; done
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check dnslib==0.9.26 2>/dev/null
"$work/venv/bin/python" - "$work" <<'PYTHON'
import pathlib
import socket
import subprocess
import sys
import threading
import time

import dnslib

work = pathlib.Path(sys.argv[1])
authority = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
authority.bind(('127.0.0.1', 0))
queries = []


def serve():
    """The TTL of a record is in its name."""
    while True:
        data, client = authority.recvfrom(4096)
        query = dnslib.DNSRecord.parse(data)
        reply = query.reply()
        if query.q.qtype == dnslib.QTYPE.A:
            name = str(query.q.qname)
            queries.append(name.lower())
            reply.add_answer(*dnslib.RR.fromZone(f'{name} {name[3:].partition(".")[0]} A 192.0.2.1'))
        authority.sendto(reply.pack(), client)


def ask(name):
    query = dnslib.DNSRecord.question(f'{name}.names.example', 'A')
    [record] = dnslib.DNSRecord.parse(query.send('127.0.0.1', port, timeout=1)).rr
    return record.ttl


threading.Thread(target=serve, daemon=True).start()
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.bind(('127.0.0.1', 0))
    port = sock.getsockname()[1]
(work / 'cache').mkdir()
# What would ask the Internet is turned off.
(work / 'conf').write_text(f"""
net.listen('127.0.0.1', {port}, {{ kind = 'dns' }})
modules.unload('ta_update')
modules.unload('ta_signal_query')
modules.unload('priming')
modules.unload('detect_time_skew')
trust_anchors.remove('.')
cache.size = 10 * MB
policy.add(policy.suffix(policy.STUB('127.0.0.1@{authority.getsockname()[1]}'),
                         {{todname('names.example')}}))
""")
# Its modules have to be in /usr, so for this process they are.
resolver = subprocess.Popen(
    ['unshare', '--map-root-user', '--mount', 'sh', '-c',
     f'mount -t overlay overlay -o lowerdir={work}/root/usr:/usr /usr && '
     f'exec kresd -n -q -c {work}/conf {work}/cache'], stderr=subprocess.DEVNULL)
try:
    for _ in range(100):
        try:
            ask('ttl9')
            break
        except OSError:
            time.sleep(0.1)
    seen = {}
    for ttl in 0, 1, 3, 60:
        queries.clear()
        seen[ttl] = []
        for _ in range(4):
            seen[ttl].append(ask(f'ttl{ttl}'))
            time.sleep(1.1)
        print(f'a TTL of {ttl}: told', *seen[ttl], f'in 3.3 seconds; queries to the authority: {len(queries)}')
        assert len(queries) == 1
    assert seen[0] == seen[1] == [5, 0, 0, 0]
    assert seen[3][0] == 5 and seen[3][1] <= 2 and seen[3][3] == 0
    assert seen[60][0] == 60 and 56 <= seen[60][3] <= 57
finally:
    resolver.terminate()
    resolver.wait()
PYTHON
# Seen:
#   a TTL of 0: told 5 0 0 0 in 3.3 seconds; queries to the authority: 1
#   a TTL of 1: told 5 0 0 0 in 3.3 seconds; queries to the authority: 1
#   a TTL of 3: told 5 2 1 0 in 3.3 seconds; queries to the authority: 1
#   a TTL of 60: told 60 59 58 57 in 3.3 seconds; queries to the authority: 1
