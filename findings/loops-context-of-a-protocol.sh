#!/usr/bin/env bash
# data_received sees no context variables on rloop, and on uvloop those that connection_made has set.
#
# Packages: rloop 0.5.0, uvloop 0.23.0; asyncio beside them.
# Guess: the methods of a protocol see the context variables of who called create_connection, such as the id
#   of a request for the log, on each loop.
# What happens: so it is on asyncio. On rloop only connection_made sees them; for data_received and
#   connection_lost the variable is as if it had never been set. On uvloop a value that connection_made sets
#   is there in the other two, which on asyncio it is not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check rloop==0.5.0 uvloop==0.23.0 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import asyncio
import contextvars
import socket

import rloop
import uvloop

variable = contextvars.ContextVar('variable', default='unset')


class Protocol(asyncio.Protocol):
    def __init__(self, sets):
        self.sets = sets
        self.seen = {}
        self.received = asyncio.Event()
        self.lost = asyncio.Event()

    def connection_made(self, transport):
        self.seen['connection_made'] = variable.get()
        if self.sets:
            variable.set('of connection_made')

    def data_received(self, data):
        self.seen['data_received'] = variable.get()
        self.received.set()

    def connection_lost(self, error):
        self.seen['connection_lost'] = variable.get()
        self.lost.set()


async def main(sets):
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    variable.set('of the caller')
    transport, protocol = await loop.create_connection(lambda: Protocol(sets), sock=ours)
    theirs.send(b'data')
    await protocol.received.wait()
    theirs.close()
    await protocol.lost.wait()
    transport.close()
    return protocol.seen


CALLER = 'of the caller'
METHODS = ('connection_made', 'data_received', 'connection_lost')
expected = {
    (asyncio, False): [CALLER, CALLER, CALLER],
    (asyncio, True): [CALLER, CALLER, CALLER],
    (uvloop, False): [CALLER, CALLER, CALLER],
    (uvloop, True): [CALLER, 'of connection_made', 'of connection_made'],
    (rloop, False): [CALLER, 'unset', 'unset'],
    (rloop, True): [CALLER, 'unset', 'unset'],
}
for (module, sets), values in expected.items():
    with asyncio.Runner(loop_factory=module.new_event_loop) as runner:
        seen = runner.run(main(sets))
    print(f'{module.__name__}, connection_made {"sets it" if sets else "does not set it"}:')
    for method, value in seen.items():
        print(f'  {method} sees {value!r}')
    assert seen == dict(zip(METHODS, values, strict=True))
PYTHON
# Seen:
#   asyncio, connection_made does not set it:
#     connection_made sees 'of the caller'
#     data_received sees 'of the caller'
#     connection_lost sees 'of the caller'
#   asyncio, connection_made sets it:
#     connection_made sees 'of the caller'
#     data_received sees 'of the caller'
#     connection_lost sees 'of the caller'
#   uvloop, connection_made does not set it:
#     connection_made sees 'of the caller'
#     data_received sees 'of the caller'
#     connection_lost sees 'of the caller'
#   uvloop, connection_made sets it:
#     connection_made sees 'of the caller'
#     data_received sees 'of connection_made'
#     connection_lost sees 'of connection_made'
#   rloop, connection_made does not set it:
#     connection_made sees 'of the caller'
#     data_received sees 'unset'
#     connection_lost sees 'unset'
#   rloop, connection_made sets it:
#     connection_made sees 'of the caller'
#     data_received sees 'unset'
#     connection_lost sees 'unset'
