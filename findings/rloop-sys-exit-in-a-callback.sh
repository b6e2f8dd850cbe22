#!/usr/bin/env bash
# On rloop, sys.exit() in a callback or in a task is logged, and the program goes on.
#
# Package: rloop 0.5.0; uvloop 0.23.0 and asyncio beside it.
# Guess: SystemExit is not for the loop: it leaves run_forever, wherever it is raised, and the program ends
#   with its code, as on asyncio and uvloop. So `loop.add_signal_handler(signal.SIGTERM, sys.exit, 3)` is
#   all that a service needs to end.
# What happens: rloop logs it as an exception in a callback. The service runs on after SIGTERM, and the
#   program ends with 0 when its work is done.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check rloop==0.5.0 uvloop==0.23.0 2>/dev/null
cat > "$work/service.py" <<'PYTHON'
import asyncio
import os
import signal
import sys

import rloop
import uvloop


async def exits():
    sys.exit(3)


async def main(where):
    loop = asyncio.get_running_loop()
    if where == 'callback':
        loop.call_soon(sys.exit, 3)
    elif where == 'task':
        task = asyncio.create_task(exits())
    else:
        loop.add_signal_handler(signal.SIGTERM, sys.exit, 3)
        os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.5)


module = {'asyncio': asyncio, 'uvloop': uvloop, 'rloop': rloop}[sys.argv[1]]
with asyncio.Runner(loop_factory=module.new_event_loop) as runner:
    runner.run(main(sys.argv[2]))
PYTHON
for loop in asyncio uvloop rloop; do
    for where in callback task signal; do
        code=0
        "$work/venv/bin/python" "$work/service.py" "$loop" "$where" 2>/dev/null || code=$?
        echo "$loop, sys.exit(3) in $where: ends with $code"
        expected=3
        if [ "$loop" = rloop ]; then expected=0; fi
        [ "$code" = "$expected" ]
    done
done
# Seen:
#   asyncio, sys.exit(3) in callback: ends with 3
#   asyncio, sys.exit(3) in task: ends with 3
#   asyncio, sys.exit(3) in signal: ends with 3
#   uvloop, sys.exit(3) in callback: ends with 3
#   uvloop, sys.exit(3) in task: ends with 3
#   uvloop, sys.exit(3) in signal: ends with 3
#   rloop, sys.exit(3) in callback: ends with 0
#   rloop, sys.exit(3) in task: ends with 0
#   rloop, sys.exit(3) in signal: ends with 0
