#!/usr/bin/env bash
# sseclient-py gives an event that the connection cut off, as if it were whole.
#
# Package: sseclient-py 1.9.0.
# Guess: an event ends with an empty line. What stands behind the last one when the stream ends is
#   discarded, as the HTML standard says: the rest of it will come again after reconnecting.
# What happens: it is given as an event, with as much of its data as had arrived, even in the middle of a
#   line. A program that stores the id of what it got, and reconnects, never sees the rest.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check sseclient-py==1.9.0 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
from sseclient import SSEClient

stream = [b'id: 1\ndata: {"amount": 10}\n\nid: 2\ndata: {"amount": 1', ]
events = [(event.id, event.data) for event in SSEClient(iter(stream)).events()]
for event in events:
    print(event)
assert events == [('1', '{"amount": 10}'), ('2', '{"amount": 1')]
PYTHON
# Seen:
#   ('1', '{"amount": 10}')
#   ('2', '{"amount": 1')
