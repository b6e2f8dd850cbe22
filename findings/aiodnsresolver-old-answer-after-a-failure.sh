#!/usr/bin/env bash
# On CPython 3.12 and later, aiodnsresolver keeps an answer past its time if a try before it had failed.
#
# Package: aiodnsresolver 0.0.157. The script needs python3.13.
# Guess: an answer is kept for its TTL, a second here, whether it came at the first try or at the second,
#   and `clear_cache` empties the cache.
# What happens: after a SERVFAIL, a time-out or a lost reply, the lookup is kept alive by a cycle of
#   exception, traceback and frame. Who asks again gets its old answer, past its time, without a query, until
#   Python happens to collect garbage. `clear_cache` does not help. On CPython 3.11 there is no such cycle.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.13 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    aiodnsresolver==0.0.157 dnslib==0.9.26 2>/dev/null
"$work/venv/bin/python" - 2>/dev/null <<'PYTHON'
import asyncio
import gc
import socket
import threading

import dnslib
from aiodnsresolver import TYPES, Resolver


class Nameserver:
    def __init__(self, failures):
        self.failures = failures
        self.address = '192.0.2.1'
        self.queries = 0
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(('127.0.0.1', 0))
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            data, client = self.sock.recvfrom(4096)
            query = dnslib.DNSRecord.parse(data)
            self.queries += 1
            reply = query.reply()
            if self.failures:
                self.failures -= 1
                reply.header.rcode = dnslib.RCODE.SERVFAIL
            else:
                reply.add_answer(*dnslib.RR.fromZone(f'{query.q.qname} 1 A {self.address}'))
            self.sock.sendto(reply.pack(), client)


async def main():
    for failures, seen_then in (0, '192.0.2.2'), (1, '192.0.2.1'):
        nameserver = Nameserver(failures)

        async def get_nameservers(_, host):
            for _ in range(5):
                yield 1, nameserver.sock.getsockname()

        async def ask(when):
            address, = await resolve('a.example', TYPES.A)
            left = address.expires_at - asyncio.get_running_loop().time()
            print(f'{failures} failures, {when}: {address}, {nameserver.queries} queries, '
                  f'{"fresh" if left > 0 else "past its time"}')
            return str(address)

        resolve, clear_cache = Resolver(get_nameservers=get_nameservers)
        await ask('at first')
        nameserver.address = '192.0.2.2'
        await asyncio.sleep(3)
        assert await ask('three seconds later') == seen_then
        await clear_cache()
        assert await ask('with a clear cache') == seen_then
        gc.collect()
        assert await ask('after gc.collect()') == '192.0.2.2'

asyncio.run(main())
PYTHON
# Seen:
#   0 failures, at first: 192.0.2.1, 1 queries, fresh
#   0 failures, three seconds later: 192.0.2.2, 2 queries, fresh
#   0 failures, with a clear cache: 192.0.2.2, 3 queries, fresh
#   0 failures, after gc.collect(): 192.0.2.2, 3 queries, fresh
#   1 failures, at first: 192.0.2.1, 2 queries, fresh
#   1 failures, three seconds later: 192.0.2.1, 2 queries, past its time
#   1 failures, with a clear cache: 192.0.2.1, 2 queries, past its time
#   1 failures, after gc.collect(): 192.0.2.2, 3 queries, fresh
