#!/usr/bin/env bash
# dnslib completes the target of MX in a zone, but not that of SRV, and takes `@` in data for a name.
#
# Package: dnslib 0.9.26 (RR.fromZone, as its own zone server uses it).
# Guess: a name without a dot at its end is relative to $ORIGIN, and `@` is $ORIGIN, wherever a name may
#   stand (RFC 1035 5.1): in the data of MX, CNAME and SRV alike. Class and TTL may stand in either order,
#   and in small letters.
# What happens: `SRV 0 0 80 host` points to the top-level name `host.`, `CNAME @` to `@.example.`, without
#   an error. `www IN 60 A ...` and `www 60 in a ...` are an error about a reverse lookup.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check dnslib==0.9.26 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
from dnslib import RR, DNSError

for line, expected in (
    ('@ 60 IN A 127.0.0.1', 'example. A 127.0.0.1'),
    ('@ 60 IN MX 10 host', 'example. MX 10 host.example.'),
    ('a 60 IN CNAME host', 'a.example. CNAME host.example.'),
    ('a 60 IN CNAME @', 'a.example. CNAME @.example.'),
    ('_http._tcp 60 IN SRV 0 0 80 host', '_http._tcp.example. SRV 0 0 80 host.'),
    ('www IN 60 A 127.0.0.1', 'DNSError, QTYPE: Invalid reverse lookup: [60]'),
    ('www 60 in A 127.0.0.1', 'DNSError, QTYPE: Invalid reverse lookup: [in]'),
):
    try:
        name, _, _, *rest = str(RR.fromZone(f'$ORIGIN example.\n{line}')[0]).split()
        seen = ' '.join([name, *rest])
    except DNSError as error:
        seen = f'DNSError, {error}'
    print(f'{line:34} {seen}')
    assert seen == expected
PYTHON
# Seen:
#   @ 60 IN A 127.0.0.1                example. A 127.0.0.1
#   @ 60 IN MX 10 host                 example. MX 10 host.example.
#   a 60 IN CNAME host                 a.example. CNAME host.example.
#   a 60 IN CNAME @                    a.example. CNAME @.example.
#   _http._tcp 60 IN SRV 0 0 80 host   _http._tcp.example. SRV 0 0 80 host.
#   www IN 60 A 127.0.0.1              DNSError, QTYPE: Invalid reverse lookup: [60]
#   www 60 in A 127.0.0.1              DNSError, QTYPE: Invalid reverse lookup: [in]
