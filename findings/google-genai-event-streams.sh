#!/usr/bin/env bash
# google-genai can not read event streams that browsers read, such as those that a comment keeps alive.
#
# Package: google-genai 3.6.1.
# Guess: `generate_content_stream` asks for `alt=sse`, so it reads an event stream (HTML, "Parsing an event
#   stream"): lines that begin with a colon are ignored, unknown fields too, and the space behind `data:` may be
#   missing. Gateways send comments so that nothing in between closes a connection for its silence.
# What happens: a line that does not begin with `data: ` is taken for JSON, and the stream ends with
#   UnknownApiResponseError.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check google-genai==3.6.1 httpx2==2.16.2 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import httpx2
from google import genai

DATA = '{"candidates": [{"content": {"parts": [{"text": "hello"}]}}]}\n\n'
STREAMS = {
    'as Google sends it': ('data: ' + DATA, 'hello'),
    'a comment': (': ping\n\ndata: ' + DATA, 'UnknownApiResponseError'),
    'an id': ('id: 1\ndata: ' + DATA, 'UnknownApiResponseError'),
    'no space': ('data:' + DATA, 'UnknownApiResponseError'),
}
for name, (stream, expected) in STREAMS.items():
    def respond(request, stream=stream):
        return httpx2.Response(200, headers={'content-type': 'text/event-stream'}, text=stream)

    client = genai.Client(api_key='key', http_options=genai.types.HttpOptions(
        httpx_client=httpx2.Client(transport=httpx2.MockTransport(respond))))
    try:
        seen = ''.join(part.text for part in client.models.generate_content_stream(model='m', contents='Hello?'))
    except Exception as error:
        seen = type(error).__name__
    print(f'{name}: {seen}')
    assert seen == expected
PYTHON
# Seen:
#   as Google sends it: hello
#   a comment: UnknownApiResponseError
#   an id: UnknownApiResponseError
#   no space: UnknownApiResponseError
