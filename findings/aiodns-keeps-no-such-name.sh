#!/usr/bin/env bash
# A resolver of aiodns goes on to say that a name does not exist for as long as the zone once said so.
#
# Package: aiodns 4.0.4 (on pycares 5.2.1, with c-ares 1.34.9).
# Guess: `query_dns` sends a query. Neither package speaks of a cache, and none of their options is about
#   one. Who waits for a name to appear, such as that of a new container, asks once a second and finds it.
# What happens: c-ares has a cache, and it is on. NXDOMAIN is kept for the minimum of the zone's SOA record,
#   an hour in many zones. In this time the name is not found although it
#   exists. Only another resolver object finds it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    aiodns==4.0.4 pycares==5.2.1 dnslib==0.9.26 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import asyncio
import inspect
import socket
import threading

import aiodns
import dnslib
import pycares

sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(('127.0.0.1', 0))
addresses = {}
queries = []


def serve():
    while True:
        data, client = sock.recvfrom(4096)
        query = dnslib.DNSRecord.parse(data)
        name = str(query.q.qname).lower().rstrip('.')
        queries.append(name)
        reply = query.reply()
        if name in addresses:
            reply.add_answer(*dnslib.RR.fromZone(f'{name}. 1 A {addresses[name]}'))
        else:
            reply.header.rcode = dnslib.RCODE.NXDOMAIN
            reply.add_auth(*dnslib.RR.fromZone('example. 3600 SOA ns.example. a.example. 1 1 1 1 3600'))
        sock.sendto(reply.pack(), client)


async def ask(resolver):
    try:
        found = (await resolver.query_dns('new.example', 'A')).answer[0].data.addr
    except aiodns.error.DNSError as error:
        found = error.args[1]
    print(f'{found}, {len(queries)} queries')
    return found, len(queries)


async def main():
    nameserver = f'127.0.0.1:{sock.getsockname()[1]}'
    resolver = aiodns.DNSResolver(nameservers=[nameserver])
    assert await ask(resolver) == ('Domain name not found', 1)
    addresses['new.example'] = '192.0.2.1'
    for _ in range(3):
        await asyncio.sleep(1)
        assert await ask(resolver) == ('Domain name not found', 1)
    assert await ask(aiodns.DNSResolver(nameservers=[nameserver])) == ('192.0.2.1', 2)
    options = str(inspect.signature(pycares.Channel))
    assert 'cache' not in options

threading.Thread(target=serve, daemon=True).start()
asyncio.run(main())
PYTHON
# Seen:
#   Domain name not found, 1 queries
#   Domain name not found, 1 queries
#   Domain name not found, 1 queries
#   Domain name not found, 1 queries
#   192.0.2.1, 2 queries
