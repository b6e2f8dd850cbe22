#!/usr/bin/env bash
# aiohttp.web answers HTTP/1.0 with keep-alive by a response that has no end.
#
# Package: aiohttp 3.14.5, as a server.
# Guess: a streamed response to an HTTP/1.0 client has neither a length nor chunks, so the server
#   closes the connection after it, whether or not the client asked for keep-alive: nothing else could
#   tell the client where the response ends.
# What happens: without `connection: keep-alive` it closes. With it, the response has no length, no
#   coding and no `connection` field either, and the connection stays open. A client that reads to the
#   end waits until the server's keep-alive time-out closes it (75 seconds by default). A second request on
#   the same connection is answered.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check aiohttp==3.14.5 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import asyncio

from aiohttp import web

KEEP_ALIVE_TIMEOUT = 3


async def streamed(request):
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b'hello')
    await response.write_eof()
    return response


async def ask(port, field):
    """What comes for one HTTP/1.0 request, and after how many seconds the server closes."""
    reader, writer = await asyncio.open_connection('127.0.0.1', port)
    writer.write(b'GET / HTTP/1.0\r\nHost: localhost\r\n' + field + b'\r\n')
    clock = asyncio.get_running_loop().time
    start = clock()
    data = await asyncio.wait_for(reader.read(-1), 30)
    writer.close()
    return data, clock() - start


async def main():
    app = web.Application()
    app.router.add_get('/', streamed)
    runner = web.AppRunner(app, keepalive_timeout=KEEP_ALIVE_TIMEOUT)
    await runner.setup()
    site = web.TCPSite(runner, '127.0.0.1', 0)
    await site.start()
    port = runner.addresses[0][1]
    for field in (b'', b'Connection: keep-alive\r\n'):
        data, seconds = await ask(port, field)
        head, _, body = data.lower().partition(b'\r\n\r\n')
        names = [line.partition(b':')[0].decode() for line in head.split(b'\r\n')[1:]]
        print(f'{field!r}: {head.split(bytes([13]))[0].decode()}, fields {names}, body {body!r}, '
              f'closed after {"no" if seconds < 1 else "the keep-alive"} time')
        assert body == b'hello', body
        assert not {'content-length', 'transfer-encoding', 'connection'} & set(names), names
        assert (seconds > KEEP_ALIVE_TIMEOUT / 2) == bool(field), seconds
    await runner.cleanup()

asyncio.run(main())
PYTHON
# Seen:
#   b'': http/1.0 200 ok, fields ['content-type', 'date', 'server'], body b'hello', closed after no time
#   b'Connection: keep-alive\r\n': http/1.0 200 ok, fields ['content-type', 'date', 'server'], body b'hello', closed after the keep-alive time
