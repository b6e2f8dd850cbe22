#!/usr/bin/env bash
# The nameserver of dnslib sends UDP replies of any length, whatever the query allows.
#
# Package: dnslib 0.9.26 (dnslib.server); dnspython 2.9.2 asks it.
# Guess: a reply of more than 512 bytes to a query without EDNS is truncated (RFC 1035 4.2.1), and one with
#   EDNS at the size that the query gives (RFC 6891 6.2.3), as by real nameservers. So a client that is
#   tested against it has met truncation.
# What happens: 200 addresses come in one datagram of 3227 bytes, without TC, in both cases. There is a
#   limit only where `UDPHandler` is derived from, or its class attribute `udplen` set, and then it is the
#   same for all.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check dnslib==0.9.26 dnspython==2.9.2 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import dns.flags
import dns.message
import dns.query
import dnslib
import dnslib.server


class Resolver:
    def resolve(self, request, handler):
        reply = request.reply()
        for number in range(200):
            reply.add_answer(dnslib.RR(request.q.qname, ttl=60, rdata=dnslib.A(f'192.0.2.{number}')))
        return reply


logger = dnslib.server.DNSLogger('-request,-reply')
server = dnslib.server.DNSServer(Resolver(), address='127.0.0.1', port=0, logger=logger)
server.start_thread()
port = server.server.server_address[1]
for size in 0, 1232:
    edns = {'use_edns': 0, 'payload': size} if size else {'use_edns': False}
    query = dns.message.make_query('a.example', 'A', **edns)
    reply = dns.query.udp(query, '127.0.0.1', port=port, timeout=5)
    is_truncated = bool(reply.flags & dns.flags.TC)
    length = len(reply.to_wire())
    print(f'allowed: {size or 512} bytes, got: {length}, {len(reply.answer[0])} addresses, '
          f'truncated: {is_truncated}')
    assert (len(reply.answer[0]), is_truncated) == (200, False)
PYTHON
# Seen:
#   allowed: 512 bytes, got: 3227, 200 addresses, truncated: False
#   allowed: 1232 bytes, got: 3227, 200 addresses, truncated: False
