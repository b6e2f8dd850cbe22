#!/usr/bin/env bash
# A resolver of aiodns goes on with the nameservers that resolv.conf had when it was made.
#
# Package: aiodns 4.0.4 (on pycares 5.2.1, with c-ares 1.34.9). aiohttp uses it where it is installed.
# Guess: as with getaddrinfo, a new network or VPN is noticed at the next lookup: c-ares can watch its files
#   for changes.
# What happens: that is part of its own thread, which aiodns does not start. The new nameserver is never
#   asked. Where the old one is gone, each lookup fails until the program makes another resolver.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    aiodns==4.0.4 pycares==5.2.1 dnslib==0.9.26 2>/dev/null
"$work/venv/bin/python" - "$work/resolv.conf" <<'PYTHON'
import asyncio
import pathlib
import socket
import sys
import threading

import aiodns
import dnslib

path = pathlib.Path(sys.argv[1])
queries = {}


def serve(sock, address):
    while True:
        data, client = sock.recvfrom(4096)
        query = dnslib.DNSRecord.parse(data)
        queries[address] = queries.get(address, 0) + 1
        reply = query.reply()
        reply.add_answer(*dnslib.RR.fromZone(f'{query.q.qname} 60 A 192.0.2.1'))
        sock.sendto(reply.pack(), client)


def nameserver(address, port=0):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, port))
    threading.Thread(target=serve, args=(sock, address), daemon=True).start()
    return sock.getsockname()[1]


async def ask(resolver, name):
    await resolver.query_dns(name, 'A')
    print(f'{name}: {queries}')


async def main():
    port = nameserver('127.0.0.1')
    nameserver('127.0.0.2', port)
    path.write_text('nameserver 127.0.0.1\n')
    resolver = aiodns.DNSResolver(resolvconf_path=str(path), udp_port=port, tcp_port=port)
    await ask(resolver, '1.example')
    path.write_text('nameserver 127.0.0.2\n')
    for number in range(2, 6):
        await asyncio.sleep(1)
        await ask(resolver, f'{number}.example')
    assert queries == {'127.0.0.1': 5}
    await ask(aiodns.DNSResolver(resolvconf_path=str(path), udp_port=port, tcp_port=port), '6.example')
    assert queries == {'127.0.0.1': 5, '127.0.0.2': 1}

asyncio.run(main())
PYTHON
# Seen:
#   1.example: {'127.0.0.1': 1}
#   2.example: {'127.0.0.1': 2}
#   3.example: {'127.0.0.1': 3}
#   4.example: {'127.0.0.1': 4}
#   5.example: {'127.0.0.1': 5}
#   6.example: {'127.0.0.1': 5, '127.0.0.2': 1}
