#!/usr/bin/env bash
# While 20 streams are open, httpx makes a new connection for each request beside them.
#
# Package: httpx 0.28.1 (with httpcore 1.0.9). httpx2 2.16.2 does as guessed.
# Guess: `max_keepalive_connections`, 20 by default, is about idle connections. So beside 20 open streams, as
#   of language models, five requests one after the other share one connection.
# What happens: the connections in use count too. As long as more than 20 are open, each that becomes idle is
#   closed at once, and each request makes a new one, with its TLS handshake.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check httpx==0.28.1 httpcore==1.0.9 httpx2==2.16.2 \
    2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import asyncio
import contextlib

import httpx
import httpx2

made = 0


async def serve(reader, writer):
    global made
    made += 1
    with contextlib.suppress(asyncio.IncompleteReadError, asyncio.CancelledError):
        while head := await reader.readuntil(b'\r\n\r\n'):
            is_stream = head.startswith(b'GET /stream ')
            writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\nok' % (100 if is_stream else 2))
    writer.close()


async def connections(library, streams):
    global made
    server = await asyncio.start_server(serve, '127.0.0.1', 0)
    url = 'http://127.0.0.1:{}/'.format(server.sockets[0].getsockname()[1])
    async with library.AsyncClient() as client, contextlib.AsyncExitStack() as stack:
        for _ in range(streams):
            await stack.enter_async_context(client.stream('GET', url + 'stream'))
        made = 0
        for _ in range(5):
            assert (await client.get(url)).text == 'ok'
    server.close()
    return made


for library, streams, expected in (httpx, 19, 1), (httpx, 20, 5), (httpx, 21, 5), (httpx2, 21, 1):
    number = asyncio.run(connections(library, streams))
    print(f'{library.__name__}: beside {streams} streams, 5 requests made {number} connections')
    assert number == expected
PYTHON
# Seen:
#   httpx: beside 19 streams, 5 requests made 1 connections
#   httpx: beside 20 streams, 5 requests made 5 connections
#   httpx: beside 21 streams, 5 requests made 5 connections
#   httpx2: beside 21 streams, 5 requests made 1 connections
