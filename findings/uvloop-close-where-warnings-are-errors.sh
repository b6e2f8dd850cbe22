#!/usr/bin/env bash
# Where warnings are errors, a uvloop loop that has a server open never ends its close().
#
# Package: uvloop 0.23.0.
# Guess: with python -W error, or pytest's filterwarnings = error, something that was left open is told
#   of by a ResourceWarning. As an error it is at most one that cannot be raised: it is printed, and
#   asyncio.run ends, as it does on asyncio's own loop.
# What happens: close() warns of each handle that is open, closes it, and then runs the loop until all
#   handles are closed. If the warning is raised, it is printed as ignored, but the handle is not closed,
#   and the loop waits for its end without a time-out. So a test that fails before it closes its server
#   hangs in the end of asyncio.run, and nobody sees why it had failed. Without -W error the same program
#   ends.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check uvloop==0.23.0 2>/dev/null
cat > "$work/server.py" <<'PYTHON'
import asyncio
import sys

import uvloop


async def main():
    global server
    server = await asyncio.start_server(lambda reader, writer: None, '127.0.0.1', 0)

module = {'asyncio': asyncio, 'uvloop': uvloop}[sys.argv[1]]
with asyncio.Runner(loop_factory=module.new_event_loop) as runner:
    runner.run(main())
PYTHON
ends() {
    local code=0
    timeout 20 "$work/venv/bin/python" "$@" 2>> "$work/complaints" || code=$?
    if [ "$code" = 124 ]; then echo 'never ends'; else echo "ends with $code"; fi
}
on_asyncio=$(ends -W error "$work/server.py" asyncio)
on_uvloop=$(ends "$work/server.py" uvloop)
with_errors=$(ends -W error "$work/server.py" uvloop)
echo "asyncio, warnings are errors: $on_asyncio"
echo "uvloop: $on_uvloop"
echo "uvloop, warnings are errors: $with_errors"
grep -q 'unclosed resource <TCPServer' "$work/complaints"
[ "$on_asyncio" = 'ends with 0' ]
[ "$on_uvloop" = 'ends with 0' ]
[ "$with_errors" = 'never ends' ]
# Seen:
#   asyncio, warnings are errors: ends with 0
#   uvloop: ends with 0
#   uvloop, warnings are errors: never ends
