#!/usr/bin/env bash
# tornado's client cannot read a chunked response that has trailers or a chunk extension.
#
# Package: tornado 6.6.1 (AsyncHTTPClient, its default implementation).
# Guess: both are part of chunked coding (RFC 9112 7.1.1, 7.1.2), which every HTTP/1.1 client must be able to
#   decode: extensions it does not know are ignored, and so are trailer fields.
# What happens: the response fails with HTTPStreamClosedError, "Connection closed" or "Stream closed", as if
#   the server had hung up; the server had sent all of it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check tornado==6.6.1 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON' 2>/dev/null
import asyncio

from tornado.httpclient import AsyncHTTPClient
from tornado.simple_httpclient import HTTPStreamClosedError

CONTENT = {
    'plain': b'5\r\nhello\r\n0\r\n\r\n',
    'extension': b'5;part=1\r\nhello\r\n0\r\n\r\n',
    'trailers': b'5\r\nhello\r\n0\r\nx-checksum: 1\r\n\r\n',
}


async def serve(reader, writer):
    target = (await reader.readuntil(b'\r\n\r\n')).split()[1].decode()
    writer.write(b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n' + CONTENT[target.strip('/')])
    await reader.read()  # until the client hangs up
    writer.close()


async def main():
    server = await asyncio.start_server(serve, '127.0.0.1', 0)
    port = server.sockets[0].getsockname()[1]
    for name in CONTENT:
        try:
            outcome = (await AsyncHTTPClient().fetch(f'http://127.0.0.1:{port}/{name}')).body
        except HTTPStreamClosedError as error:
            outcome = type(error).__name__
        print(f'{name}: {outcome}')
        assert outcome == (b'hello' if name == 'plain' else 'HTTPStreamClosedError')
    server.close()

asyncio.run(main())
PYTHON
# Seen:
#   plain: b'hello'
#   extension: HTTPStreamClosedError
#   trailers: HTTPStreamClosedError
