#!/usr/bin/env bash
# Knot DNS ends an answer after five aliases, and nothing in the answer says that it is not whole.
#
# Package: knot 3.2.6-1 of Debian 12, which the script needs; asked with dnslib 0.9.26 and dnspython 2.9.2.
# Guess: an authority puts all of a chain of CNAME records that is in its zone into the answer, with the
#   address at its end (RFC 1034 3.6.2: "CNAME chains should be followed"). If there were a limit, the answer
#   would be an error, or it would be truncated.
# What happens: six aliases are answered by five CNAME records and no address, as NOERROR, authoritative, not
#   truncated, without a word in the other sections. There is no setting for it. Who does not ask again for
#   the name at which it ends, such as dnspython's stub resolver, takes it for a name without an address.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/archives/partial"
apt-get install --download-only --reinstall --no-install-recommends -qq -o Debug::NoLocking=1 \
    -o APT::Sandbox::User=root -o Dir::Cache::Archives="$work/archives" knot=3.2.6-1 >/dev/null
for package in "$work"/archives/*.deb; do dpkg -x "$package" "$work/root"; done
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    dnslib==0.9.26 dnspython==2.9.2 2>/dev/null
export LD_LIBRARY_PATH="$work/root/usr/lib/$(uname -m)-linux-gnu"
"$work/venv/bin/python" - "$work" <<'PYTHON'
import pathlib
import socket
import subprocess
import sys
import time

import dns.resolver
import dnslib

work = pathlib.Path(sys.argv[1])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.bind(('127.0.0.1', 0))
    port = sock.getsockname()[1]
aliases = ''.join(f'alias{number} 60 IN CNAME {f"alias{number - 1}" if number > 1 else "www"}\n'
                  for number in range(1, 8))
(work / 'zone').write_text(f'''$ORIGIN names.example.
@ 3600 IN SOA ns hostmaster 1 3600 600 86400 60
@ 3600 IN NS ns
ns 3600 IN A 192.0.2.53
www 60 IN A 192.0.2.1
{aliases}''')
(work / 'conf').write_text(f'''
server:
    listen: 127.0.0.1@{port}
    rundir: "{work}"
database:
    storage: "{work}"
zone:
  - domain: names.example
    file: "{work}/zone"
    zonefile-sync: -1
    journal-content: none
''')


def ask(name):
    query = dnslib.DNSRecord.question(f'{name}.names.example', 'A')
    return dnslib.DNSRecord.parse(query.send('127.0.0.1', port, timeout=1))


def wait_for_it():
    for _ in range(100):
        try:
            if ask('www').rr:
                return
        except OSError:
            pass
        time.sleep(0.1)


def look_up(name):
    resolver = dns.resolver.Resolver(configure=False)
    resolver.nameservers, resolver.port = ['127.0.0.1'], port
    try:
        return resolver.resolve(f'{name}.names.example', 'A')[0].to_text()
    except dns.resolver.NoAnswer:
        return 'NoAnswer'


knot = subprocess.Popen([work / 'root/usr/sbin/knotd', '-c', work / 'conf'],
                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
try:
    wait_for_it()
    seen = {}
    for name in 'alias5', 'alias6', 'alias7':
        reply = ask(name)
        kinds = [dnslib.QTYPE[record.rtype] for record in reply.rr]
        header = reply.header
        seen[name] = (kinds.count('CNAME'), kinds.count('A'), dnslib.RCODE[header.rcode], header.aa,
                      header.tc, len(reply.auth), look_up(name))
        print(name, '%d CNAME, %d A, %s, aa %d, tc %d, %d in authority; dnspython: %s' % seen[name])
    assert seen == {
        'alias5': (5, 1, 'NOERROR', 1, 0, 0, '192.0.2.1'),
        'alias6': (5, 0, 'NOERROR', 1, 0, 0, 'NoAnswer'),
        'alias7': (5, 0, 'NOERROR', 1, 0, 0, 'NoAnswer')}
finally:
    knot.terminate()
    knot.wait()
PYTHON
# Seen:
#   alias5 5 CNAME, 1 A, NOERROR, aa 1, tc 0, 0 in authority; dnspython: 192.0.2.1
#   alias6 5 CNAME, 0 A, NOERROR, aa 1, tc 0, 0 in authority; dnspython: NoAnswer
#   alias7 5 CNAME, 0 A, NOERROR, aa 1, tc 0, 0 in authority; dnspython: NoAnswer
