#!/usr/bin/env bash
# A streamed response that is dropped takes its place in httpx2's pool for good.
#
# Package: httpx2 2.16.2 (with httpcore2 2.16.2). httpx 0.28.1 does the same.
# Guess: a response that nobody refers to any more, as after an exception between `send(stream=True)` and its
#   `aclose()`, is closed when it is collected as garbage, as a file or a socket is. At least its place in the
#   pool becomes free, maybe with a ResourceWarning.
# What happens: the pool itself refers to the request, and nothing tells it that the response is gone. There is
#   no warning. After `max_connections` such responses, 100 by default, each request fails with PoolTimeout
#   for as long as the client lives.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check httpx2==2.16.2 httpx==0.28.1 2>/dev/null
"$work/venv/bin/python" -W error - <<'PYTHON'
import asyncio
import contextlib
import gc

import httpx
import httpx2


async def serve(reader, writer):
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            await reader.readuntil(b'\r\n\r\n')
            writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok')
    writer.close()


async def main(library):
    server = await asyncio.start_server(serve, '127.0.0.1', 0)
    url = 'http://127.0.0.1:{}/'.format(server.sockets[0].getsockname()[1])
    async with library.AsyncClient(timeout=1) as client:
        for _ in range(100):
            response = await client.send(client.build_request('GET', url), stream=True)
            assert response.status_code == 200
            del response
        gc.collect()
        outcomes = []
        for _ in range(2):
            try:
                await client.get(url)
            except library.PoolTimeout:
                outcomes.append('PoolTimeout')
            else:
                outcomes.append('a response')
    print(f'{library.__name__}: after 100 responses that were dropped: {outcomes}')
    assert outcomes == ['PoolTimeout'] * 2
    server.close()
    await asyncio.sleep(0.1)  # the connections of the server end

asyncio.run(main(httpx2))
asyncio.run(main(httpx))
PYTHON
# Seen:
#   httpx2: after 100 responses that were dropped: ['PoolTimeout', 'PoolTimeout']
#   httpx: after 100 responses that were dropped: ['PoolTimeout', 'PoolTimeout']
