#!/usr/bin/env bash
# dnspython gives up after five seconds, whatever `timeout` and `attempts` of resolv.conf say.
#
# Package: dnspython 2.9.2.
# Guess: with `options timeout:1 attempts:1` a silent nameserver is asked once, and the lookup ends after a
#   second. With `timeout:8 attempts:1` it ends after eight.
# What happens: `attempts` is not read, and a lookup always ends after `lifetime`, five seconds: four
#   queries in the first case, and no answer that takes six seconds in the second.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check dnspython==2.9.2 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import io
import socket
import time

import dns.resolver

for options in 'timeout:1 attempts:1', 'timeout:8 attempts:1':
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(('127.0.0.1', 0))
        silent.setblocking(False)
        resolver = dns.resolver.Resolver(io.StringIO(f'nameserver 127.0.0.1\noptions {options}\n'))
        resolver.port = silent.getsockname()[1]
        start = time.monotonic()
        try:
            resolver.resolve('a.example', 'A')
        except dns.resolver.LifetimeTimeout:
            seconds = time.monotonic() - start
        queries = 0
        try:
            while silent.recv(512):
                queries += 1
        except BlockingIOError:
            pass
    print(f'{options}: {queries} queries, {seconds:.1f} seconds')
    assert 5 <= seconds < 7
    assert (queries > 1) == options.startswith('timeout:1')
PYTHON
# Seen:
#   timeout:1 attempts:1: 4 queries, 5.5 seconds
#   timeout:8 attempts:1: 1 queries, 5.1 seconds
