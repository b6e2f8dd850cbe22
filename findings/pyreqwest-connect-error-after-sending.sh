#!/usr/bin/env bash
# pyreqwest raises ConnectError for a request that the server has received.
#
# Package: pyreqwest 0.15.1.
# Guess: ConnectError means that no connection was made, so that whatever failed with it can be made again
#   safely, a POST too. That is what the name means in httpx, and what retry code keys on.
# What happens: a connection that ends after the whole POST has been received, without a response, raises
#   ConnectError too, on a new connection and on one that was kept.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pyreqwest==0.15.1 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import asyncio

from pyreqwest.client import ClientBuilder
from pyreqwest.exceptions import ConnectError

orders = []


async def serve(reader, writer):
    head = await reader.readuntil(b'\r\n\r\n')
    assert b'content-length: 9' in head.lower()
    orders.append(await reader.readexactly(9))
    writer.close()


async def main():
    server = await asyncio.start_server(serve, '127.0.0.1', 0)
    url = 'http://127.0.0.1:{}/'.format(server.sockets[0].getsockname()[1])
    async with ClientBuilder().build() as client:
        try:
            await client.post(url).body_bytes(b'one order').build().send()
        except ConnectError as error:
            print(f'the server got {orders}, the caller {type(error).__name__}')
        else:
            raise SystemExit('no error')
    assert orders == [b'one order']
    server.close()

asyncio.run(main())
PYTHON
# Seen:
#   the server got [b'one order'], the caller ConnectError
