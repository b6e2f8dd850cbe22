#!/usr/bin/env bash
# On CPython 3.13.0, uvloop makes no task once asyncio.eager_task_factory is set.
#
# Package: uvloop 0.23.0, whose wheels are for CPython 3.13 as a whole. The script needs python3.13 to be
#   3.13.0.
# Guess: asyncio.eager_task_factory (new in 3.12) is a task factory like others. uvloop calls it with what
#   the asyncio of the same Python does, so both loops make eager tasks.
# What happens: uvloop passes on eager_start, which the factory of this Python does not know. Each
#   create_task, and so each run_until_complete of a coroutine, raises TypeError. On 3.12 and on asyncio's
#   own loop nothing is wrong.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.13 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check uvloop==0.23.0 2>/dev/null
cat > "$work/eager.py" <<'PYTHON'
import asyncio
import sys

import uvloop

assert sys.version_info[:3] == (3, 13, 0), sys.version


async def main():
    return await asyncio.create_task(asyncio.sleep(0, 'done'))

outcomes = []
for module in (asyncio, uvloop):
    loop = module.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    coroutine = main()
    try:
        outcomes.append(loop.run_until_complete(coroutine))
    except TypeError as error:
        coroutine.close()
        outcomes.append(str(error))
    loop.close()
    print(f'{module.__name__}: {outcomes[-1]}')
assert outcomes[0] == 'done'
assert outcomes[1].endswith("got an unexpected keyword argument 'eager_start'")
PYTHON
"$work/venv/bin/python" "$work/eager.py"
# Seen:
#   asyncio: done
#   uvloop: create_eager_task_factory.<locals>.factory() got an unexpected keyword argument 'eager_start'
