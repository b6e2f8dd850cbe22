#!/usr/bin/env bash
# retry-requests and aiohttp-retry send a POST again, unasked.
#
# Packages: retry-requests 2.0.0, aiohttp-retry 2.9.1; httpx-retries 0.6.0 beside them.
# Guess: a session that retries leaves POST alone unless it is told otherwise, as urllib3's Retry does, on
#   which one of them is built: nobody knows whether the server has acted on it (RFC 9110 9.2.2).
#   aiohttp-retry waits as long as `Retry-After` says.
# What happens: with default settings both send the order again, with its content, after a 503.
#   retry-requests does so after the server has read it and hung up, too; it waits as long as it is told,
#   aiohttp-retry does not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    retry-requests==2.0.0 requests==2.34.2 aiohttp-retry==2.9.1 aiohttp==3.14.5 \
    httpx-retries==0.6.0 httpx==0.28.1 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import asyncio
import http.server
import threading
import time


class Handler(http.server.BaseHTTPRequestHandler):
    orders = []

    def do_POST(self):
        self.orders.append((time.monotonic(), self.rfile.read(int(self.headers['content-length']))))
        if len(self.orders) == 1 and self.path == '/hang-up':
            return
        self.send_response(503 if len(self.orders) == 1 else 200)
        self.send_header('retry-after', '1')
        self.send_header('content-length', '0')
        self.end_headers()

    def log_message(self, *_):
        pass


def with_httpx_retries(url):
    import httpx
    import httpx_retries
    with httpx.Client(transport=httpx_retries.RetryTransport()) as client:
        return client.post(url, content=b'one order').status_code


def with_retry_requests(url):
    import retry_requests
    return retry_requests.retry().post(url, data=b'one order').status_code


def with_aiohttp_retry(url):
    import aiohttp_retry

    async def post():
        async with aiohttp_retry.RetryClient() as client, client.post(url, data=b'one order') as response:
            return response.status
    return asyncio.run(post())


server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
for client, numbers, waits in ((with_httpx_retries, [1, 1], None), (with_retry_requests, [2, 2], True),
                               (with_aiohttp_retry, [2, 1], False)):
    for path, number in zip(('/busy', '/hang-up'), numbers):
        Handler.orders = []
        try:
            outcome = client(f'http://127.0.0.1:{server.server_port}{path}')
        except Exception:
            outcome = 'an error'
        print(f'{client.__name__.removeprefix("with_")}, {path}: '
              f'the server got {[content for _, content in Handler.orders]}, the caller {outcome}')
        assert [content for _, content in Handler.orders] == [b'one order'] * number
        if number == 2 and path == '/busy':
            assert (Handler.orders[1][0] - Handler.orders[0][0] > 0.9) == waits
PYTHON
# Seen:
#   httpx_retries, /busy: the server got [b'one order'], the caller 503
#   httpx_retries, /hang-up: the server got [b'one order'], the caller an error
#   retry_requests, /busy: the server got [b'one order', b'one order'], the caller 200
#   retry_requests, /hang-up: the server got [b'one order', b'one order'], the caller 200
#   aiohttp_retry, /busy: the server got [b'one order', b'one order'], the caller 200
#   aiohttp_retry, /hang-up: the server got [b'one order'], the caller an error
