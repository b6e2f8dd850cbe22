#!/usr/bin/env bash
# uvicorn with httptools sends chunked content to an HTTP/1.0 client.
#
# Package: uvicorn 0.54.0 with httptools 0.9.0, and with h11 0.16.0.
# Guess: whichever parser is installed, a response of unknown length to an HTTP/1.0 request ends with the
#   connection: HTTP/1.0 knows no transfer coding, and a server must not send one (RFC 9112 6.1).
# What happens: with h11 that is so. With httptools, which is what `uvicorn[standard]` installs and uses
#   where it is found, the response has `transfer-encoding: chunked`: a client that goes by the rules of 1.0
#   takes the chunk sizes for content.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    uvicorn==0.54.0 httptools==0.9.0 h11==0.16.0 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import asyncio
import socket

import uvicorn


async def app(scope, receive, send):
    await send({'type': 'http.response.start', 'status': 200, 'headers': []})
    await send({'type': 'http.response.body', 'body': b'hello'})


async def ask(http):
    server = uvicorn.Server(uvicorn.Config(app, http=http, lifespan='off', log_level='warning'))
    with socket.create_server(('127.0.0.1', 0)) as sock:
        task = asyncio.create_task(server.serve([sock]))
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        writer.write(b'GET / HTTP/1.0\r\nHost: localhost\r\n\r\n')
        data = await asyncio.wait_for(reader.read(-1), 30)
        writer.close()
        server.should_exit = True
        await task
    head, _, content = data.partition(b'\r\n\r\n')
    return b'transfer-encoding: chunked' in head.lower(), content


for http, expected in (('h11', (False, b'hello')),
                       ('httptools', (True, b'5\r\nhello\r\n0\r\n\r\n'))):
    is_chunked, content = asyncio.run(ask(http))
    print(f'{http}: chunked: {is_chunked}, after the head: {content!r}')
    assert (is_chunked, content) == expected
PYTHON
# Seen:
#   h11: chunked: False, after the head: b'hello'
#   httptools: chunked: True, after the head: b'5\r\nhello\r\n0\r\n\r\n'
