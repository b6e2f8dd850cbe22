#!/usr/bin/env bash
# httpx2 gives up an upload that never stands still, because the write time is for all bytes of a body at once.
#
# Package: httpx2 2.16.2 (with httpcore2 2.16.2). httpx 0.28.1 does the same.
# Guess: `write` is the longest time in which nothing could be sent, as `read` is the longest in which nothing
#   came. So a server that reads two megabytes each second gets 30 megabytes with `write=3`, whether they are
#   given as bytes or by an async generator.
# What happens: it is the time in which a whole chunk has to be sent, and `content=bytes` is one chunk. So it
#   fails with WriteTimeout after three seconds, in which bytes went out all the time. The same bytes in chunks
#   of 64 KiB arrive.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check httpx2==2.16.2 httpx==0.28.1 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import asyncio
import contextlib

import httpx
import httpx2

SIZE = 30_000_000


async def serve(reader, writer):
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        await reader.readuntil(b'\r\n\r\n')
        for _ in range(SIZE // 1_000_000):
            await asyncio.sleep(0.5)
            await reader.readexactly(1_000_000)
        writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok')
    writer.close()


async def chunks():
    for start in range(0, SIZE, 65536):
        yield bytes(min(65536, SIZE - start))


async def outcome(client, library, url, content):
    try:
        await client.put(url, content=content, headers={'content-length': str(SIZE)})
    except library.WriteTimeout:
        return 'WriteTimeout'
    return 'sent'


async def main(library):
    server = await asyncio.start_server(serve, '127.0.0.1', 0)
    url = 'http://127.0.0.1:{}/'.format(server.sockets[0].getsockname()[1])
    async with library.AsyncClient(timeout=library.Timeout(30, write=3)) as client:
        outcomes = await asyncio.gather(outcome(client, library, url, bytes(SIZE)),
                                        outcome(client, library, url, chunks()))
    print(f'{library.__name__}: as bytes: {outcomes[0]}; in chunks: {outcomes[1]}')
    assert outcomes == ['WriteTimeout', 'sent']
    server.close()
    await asyncio.sleep(0.1)  # the connections of the server end

asyncio.run(main(httpx2))
asyncio.run(main(httpx))
PYTHON
# Seen:
#   httpx2: as bytes: WriteTimeout; in chunks: sent
#   httpx: as bytes: WriteTimeout; in chunks: sent
