#!/usr/bin/env bash
# aiosseclient loses what follows U+2028 in an event; aiohttp-sse-client2 loses spaces and line ends.
#
# Packages: aiosseclient 0.1.8, aiohttp-sse-client2 0.3.0.
# Guess: a line of an event stream ends with CR, LF or both, and one space after the colon is dropped (HTML,
#   "Parsing an event stream"). Everything else of the data arrives as it was sent, as with httpx-sse.
# What happens: aiosseclient splits at whatever `str.splitlines` knows, U+2028, U+0085 and form feed among
#   them; the second half is no field, so JSON that holds such a character is cut off in the middle.
#   aiohttp-sse-client2 drops all spaces after the colon and the last line ends: the tokens of a language
#   model, most of which begin with a space, run together.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    aiosseclient==0.1.8 aiohttp-sse-client2==0.3.0 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import asyncio
import json

import aiosseclient
from aiohttp_sse_client2 import client

SENT = {
    'separator': json.dumps('one\u2028two', ensure_ascii=False),
    'spaces': ' and then',
    'line end': 'a line\n',
}


async def serve(reader, writer):
    target = (await reader.readuntil(b'\r\n\r\n')).split()[1].decode()
    data = list(SENT.values())[int(target.strip('/'))]
    lines = ''.join(f'data: {line}\n' for line in data.split('\n'))
    writer.write(b'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n'
                 + lines.encode() + b'\n')
    await writer.drain()
    await reader.read()  # until the client hangs up
    writer.close()


async def with_aiosseclient(url):
    async for event in aiosseclient.aiosseclient(url):
        return event.data


async def with_aiohttp_sse_client2(url):
    async with client.EventSource(url) as source:
        async for event in source:
            return event.data


async def main():
    server = await asyncio.start_server(serve, '127.0.0.1', 0)
    port = server.sockets[0].getsockname()[1]
    for read, expected in (
            (with_aiosseclient, ['"one', ' and then', 'a line\n']),
            (with_aiohttp_sse_client2, ['"one\u2028two"', 'and then', 'a line'])):
        got = [await asyncio.wait_for(read(f'http://127.0.0.1:{port}/{number}'), 20)
               for number in range(len(SENT))]
        for name, sent, received in zip(SENT, SENT.values(), got):
            print(f'{read.__name__.removeprefix("with_")}, {name}: {sent!a} -> {received!a}')
        assert got == expected
    server.close()

asyncio.run(main())
PYTHON
# Seen:
#   aiosseclient, separator: '"one\u2028two"' -> '"one'
#   aiossecl.s.s.s.s.s.s.s.s.s..s.s.s.s.s.s.s.s.sen'
#   aiosseclient, line end: 'a line\n' -> 'a line\n'
#   aiohttp_sse_client2, separator: '"one\u2028two"' -> '"one\u2028two"'
#   aiohttp_sse_client2, spaces: ' and then' -> 'and then'
#   aiohttp_sse_client2, line end: 'a line\n' -> 'a line'
