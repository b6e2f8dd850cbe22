#!/usr/bin/env bash
# dnslib reads `\065` in a TXT record as octal, and writes texts that it reads as others.
#
# Package: dnslib 0.9.26.
# Guess: `\DDD` is the byte with that decimal number (RFC 1035 5.1), so `\065` is `A`. What dnslib writes in
#   the form of a zone, it reads as it was: a quote and a backslash are escaped.
# What happens: `\065` is `5`, and `\059`, a semicolon, a ValueError. A backslash in a text is written as it
#   is, so that `a\b` comes back as `ab`; a quote in it makes an IndexError of the record. On the wire all
#   is right.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check dnslib==0.9.26 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
from dnslib import QTYPE, RR, TXT, DNSRecord


def read(line):
    try:
        return RR.fromZone(line)[0].rdata.data
    except (IndexError, ValueError) as error:
        return type(error).__name__


for text, expected in ((r'"\065"', [b'5']), (r'"a\059b"', 'ValueError')):
    print(f'{text} is read as {read("a 60 IN TXT " + text)}')
    assert read(f'a 60 IN TXT {text}') == expected
for text, expected in ((b'a;b', [b'a;b']), (rb'a\b', [b'ab']), (b'a"b', 'IndexError')):
    record = RR('a', QTYPE.TXT, ttl=60, rdata=TXT(text))
    line = str(record)
    print(f'{text} is written as {line.split("TXT")[1].strip()}, which is read as {read(line)}')
    assert read(line) == expected
    assert DNSRecord.parse(DNSRecord(rr=[record]).pack()).rr[0].rdata.data == [text]
PYTHON
# Seen:
#   "\065" is read as [b'5']
#   "a\059b" is read as ValueError
#   b'a;b' is written as "a;b", which is read as [b'a;b']
#   b'a\\b' is written as "a\b", which is read as [b'ab']
#   b'a"b' is written as "a"b", which is read as IndexError
