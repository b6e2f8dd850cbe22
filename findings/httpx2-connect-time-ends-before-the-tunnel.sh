#!/usr/bin/env bash
# httpx2 waits for a proxy's tunnel for the read time, not for the connect time.
#
# Package: httpx2 2.16.2 (with httpcore2 2.16.2). httpx 0.28.1 does the same.
# Guess: `connect` bounds whatever has to happen before the request can be sent, the tunnel of a proxy too. So
#   `Timeout(600, connect=1)`, much as SDKs of language models have it, gives up a proxy that accepts and
#   says nothing after a second, with ConnectTimeout, which is safe to retry.
# What happens: the answer to CONNECT is read as any response is. The request fails after the read time, which
#   is ten minutes there, with ReadTimeout, as if the server had got it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check httpx2==2.16.2 httpx==0.28.1 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import asyncio
import time

import httpx
import httpx2


async def proxy(reader, writer):
    assert (await reader.readline()).startswith(b'CONNECT name.example:443 ')
    await reader.read()  # until the client hangs up
    writer.close()


async def main(library):
    server = await asyncio.start_server(proxy, '127.0.0.1', 0)
    url = 'http://127.0.0.1:{}'.format(server.sockets[0].getsockname()[1])
    begin = time.monotonic()
    async with library.AsyncClient(proxy=url, timeout=library.Timeout(3, connect=1)) as client:
        try:
            await client.get('https://name.example/')
        except library.TimeoutException as error:
            seconds = round(time.monotonic() - begin)
            print(f'{library.__name__}: connect=1, read=3: {type(error).__name__} after {seconds} seconds')
            assert type(error) is library.ReadTimeout
            assert seconds >= 3
        else:
            raise SystemExit('no error')
    server.close()
    await asyncio.sleep(0.1)  # the proxy ends

asyncio.run(main(httpx2))
asyncio.run(main(httpx))
PYTHON
# Seen:
#   httpx2: connect=1, read=3: ReadTimeout after 3 seconds
#   httpx: connect=1, read=3: ReadTimeout after 3 seconds
