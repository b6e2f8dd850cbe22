#!/usr/bin/env bash
# On rloop, a time-out of math.inf seconds is over at once.
#
# Package: rloop 0.5.0; uvloop 0.23.0 and asyncio beside it.
# Guess: `asyncio.sleep(math.inf)` waits until it is cancelled, and what has math.inf as its time-out has none,
#   on each loop: the delay is a number like others, and libraries use it for "no limit".
# What happens: rloop runs the callback at once, as it does after 0 seconds. sleep returns, and asyncio.timeout
#   and wait_for raise TimeoutError for what would have taken a hundredth of a second. No error tells of the
#   delay. 1e18 seconds are waited for.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check rloop==0.5.0 uvloop==0.23.0 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import asyncio
import math

import rloop
import uvloop


async def sleep(delay):
    task = asyncio.create_task(asyncio.sleep(delay))
    await asyncio.sleep(0.1)
    outcome = 'returned' if task.done() else 'waits'
    task.cancel()
    return outcome


async def timeout(delay):
    try:
        async with asyncio.timeout(delay):
            await asyncio.sleep(0.1)
    except TimeoutError:
        return 'TimeoutError'
    return 'no time-out'


async def wait_for(delay):
    try:
        await asyncio.wait_for(asyncio.sleep(0.1), delay)
    except TimeoutError:
        return 'TimeoutError'
    return 'no time-out'


async def main():
    return {
        delay: [await wait(delay) for wait in (sleep, timeout, wait_for)]
        for delay in (1e18, math.inf)
    }


for module in (asyncio, uvloop, rloop):
    with asyncio.Runner(loop_factory=module.new_event_loop) as runner:
        outcomes = runner.run(main())
    for delay, seen in outcomes.items():
        print(f'{module.__name__}, {delay}: sleep {seen[0]}, timeout: {seen[1]}, wait_for: {seen[2]}')
        if module is rloop and delay == math.inf:
            assert seen == ['returned', 'TimeoutError', 'TimeoutError']
        else:
            assert seen == ['waits', 'no time-out', 'no time-out']
PYTHON
# Seen:
#   asyncio, 1e+18: sleep waits, timeout: no time-out, wait_for: no time-out
#   asyncio, inf: sleep waits, timeout: no time-out, wait_for: no time-out
#   uvloop, 1e+18: sleep waits, timeout: no time-out, wait_for: no time-out
#   uvloop, inf: sleep waits, timeout: no time-out, wait_for: no time-out
#   rloop, 1e+18: sleep waits, timeout: no time-out, wait_for: no time-out
#   rloop, inf: sleep returned, timeout: TimeoutError, wait_for: TimeoutError
