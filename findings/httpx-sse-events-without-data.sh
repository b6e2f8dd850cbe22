#!/usr/bin/env bash
# httpx-sse gives events that have no data, and loses the first event behind a byte order mark.
#
# Package: httpx-sse 0.4.3 (with httpx 0.28.1).
# Guess: its decoder does what browsers do (HTML, "Interpreting an event stream"): a block without a `data`
#   line sets the id, the type or the time to wait, and no event is given; one leading U+FEFF is dropped.
# What happens: a block of `id`, `event` or `retry` alone is an event with the data '', so that
#   `json.loads(event.data)` or `event.json()` fails on what servers send to keep a connection alive. The
#   mark becomes part of the first field's name, which is then unknown, and its event is gone.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check httpx-sse==0.4.3 httpx==0.28.1 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import httpx
from httpx_sse import EventSource

CASES = {
    b'id: 7\n\ndata: x\n\n': [('', '7'), ('x', '7')],
    b'event: ping\n\ndata: x\n\n': [('', ''), ('x', '')],
    b'retry: 3000\n\ndata: x\n\n': [('', ''), ('x', '')],
    b': comment\n\ndata: x\n\n': [('x', '')],
    b'\xef\xbb\xbfdata: first\n\ndata: x\n\n': [('x', '')],
}
for stream, expected in CASES.items():
    response = httpx.Response(200, headers={'content-type': 'text/event-stream'}, content=stream)
    events = [(event.data, event.id) for event in EventSource(response).iter_sse()]
    print(stream, '->', events)
    assert events == expected, expected
PYTHON
# Seen:
#   b'id: 7\n\ndata: x\n\n' -> [('', '7'), ('x', '7')]
#   b'event: ping\n\ndata: x\n\n' -> [('', ''), ('x', '')]
#   b'retry: 3000\n\ndata: x\n\n' -> [('', ''), ('x', '')]
#   b': comment\n\ndata: x\n\n' -> [('x', '')]
#   b'\xef\xbb\xbfdata: first\n\ndata: x\n\n' -> [('x', '')]
