#!/usr/bin/env bash
# rloop calls an exception handler without the loop, so one that is made for asyncio fails itself.
#
# Package: rloop 0.5.0; uvloop 0.23.0 and asyncio beside it.
# Guess: an exception in a callback goes to the loop's exception handler, as `handler(loop, context)`: this is
#   what asyncio's documentation says of set_exception_handler, and rloop's list of differences does not
#   speak of it.
# What happens: rloop calls `handler(context)`. The handler is not run, and its TypeError is logged in place of
#   what it was set for: a handler that counts or reports errors, or that stops the program at the first one,
#   does nothing.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check rloop==0.5.0 uvloop==0.23.0 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import asyncio
import logging

import rloop
import uvloop

logged = []
logger = logging.getLogger('asyncio')
logger.propagate = False
logger.addFilter(lambda record: bool(logged.append(record.exc_info and record.exc_info[1])))


def fail():
    raise ValueError('in a callback')


async def main():
    reported = []

    def handler(loop, context):
        reported.append(repr(context['exception']))

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(handler)
    loop.call_soon(fail)
    await asyncio.sleep(0.05)
    return reported


for module in (asyncio, uvloop, rloop):
    logged.clear()
    with asyncio.Runner(loop_factory=module.new_event_loop) as runner:
        reported = runner.run(main())
    print(f'{module.__name__}: the handler got {reported}, logged: {[str(error) for error in logged]}')
    if module is rloop:
        assert reported == []
        assert len(logged) == 1 and isinstance(logged[0], TypeError)
    else:
        assert reported == ["ValueError('in a callback')"]
        assert logged == []
PYTHON
# Seen:
#   asyncio: the handler got ["ValueError('in a callback')"], logged: []
#   uvloop: the handler got ["ValueError('in a callback')"], logged: []
#   rloop: the handler got [], logged: ["main.<locals>.handler() missing 1 required positional argument: 'context'"]
