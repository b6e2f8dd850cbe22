#!/usr/bin/env bash
# openai and anthropic make ten minutes of the five seconds that an HTTP client was given.
#
# Packages: openai 3.57.0, anthropic 2.14.0, with httpx2 2.16.2.
# Guess: who gives such an SDK a client of his own, with a timeout, has that timeout. A client without one has
#   the SDK's own, 600 seconds to read.
# What happens: both tell a client without a timeout by its timeout being httpx2's default, which is 5 seconds.
#   So `AsyncClient(timeout=5)` waits 600 seconds for an answer, `AsyncClient(timeout=4.9)` 4.9 seconds, and
#   `AsyncClient(timeout=None)` for ever. The argument `timeout=5` of the SDK is taken as it is.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    openai==3.57.0 anthropic==2.14.0 httpx2==2.16.2 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import anthropic
import httpx2
import openai

for make in openai.AsyncOpenAI, anthropic.AsyncAnthropic:
    for given, read in ((5, 600), (4.9, 4.9), (5.1, 5.1), (None, None)):
        client = make(api_key='key', http_client=httpx2.AsyncClient(timeout=given))
        print(f'{make.__name__} with httpx2.AsyncClient(timeout={given}): {client.timeout.read} seconds to read')
        assert client.timeout.read == read
    assert make(api_key='key', http_client=httpx2.AsyncClient(), timeout=5).timeout == 5
PYTHON
# Seen:
#   AsyncOpenAI with httpx2.AsyncClient(timeout=5): 600 seconds to read
#   AsyncOpenAI with httpx2.AsyncClient(timeout=4.9): 4.9 seconds to read
#   AsyncOpenAI with httpx2.AsyncClient(timeout=5.1): 5.1 seconds to read
#   AsyncOpenAI with httpx2.AsyncClient(timeout=None): None seconds to read
#   AsyncAnthropic with httpx2.AsyncClient(timeout=5): 600 seconds to read
#   AsyncAnthropic with httpx2.AsyncClient(timeout=4.9): 4.9 seconds to read
#   AsyncAnthropic with httpx2.AsyncClient(timeout=5.1): 5.1 seconds to read
#   AsyncAnthropic with httpx2.AsyncClient(timeout=None): None seconds to read
