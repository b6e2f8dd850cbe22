"""Streams an upload and a download, or fetches a URL.

    python examples/quickstart.py
    python examples/quickstart.py https://example.com/
    python examples/quickstart.py https://example.com/ --output example.html

Without arguments it starts a server of its own on the loopback interface, streams 64 MiB to it and
back through one connection, and prints what happened. With a URL it writes the response's body to
standard output, or to a file.
"""
import argparse
import asyncio
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tqdm import tqdm

from lowhaio import HttpError, Pool

SIZE = 64 * 1024 * 1024
CHUNK = bytes(64 * 1024)


class Handler(BaseHTTPRequestHandler):
    """Reads what is uploaded, and sends as much back.

    It tells the port of the client, which shows whether the connection is the same.
    """

    protocol_version = 'HTTP/1.1'

    def do_PUT(self):
        left = int(self.headers['content-length'])
        while left:
            left -= len(self.rfile.read(min(left, len(CHUNK))))
        self.respond(201, 0)

    def do_GET(self):
        self.respond(200, SIZE)
        for _ in range(SIZE // len(CHUNK)):
            self.wfile.write(CHUNK)

    def respond(self, code, length):
        self.send_response(code)
        self.send_header('content-length', str(length))
        self.send_header('x-client-port', str(self.client_address[1]))
        self.end_headers()

    def log_message(self, *args):
        pass


def progress_bar(what, total):
    return tqdm(desc=what, total=total, unit='B', unit_scale=True, unit_divisor=1024)


async def show_round_trip(origin):
    request, close = Pool()

    async def upload():
        for _ in range(SIZE // len(CHUNK)):
            yield CHUNK
            bar.update(len(CHUNK))

    started = time.monotonic()
    with progress_bar('Upload', SIZE) as bar:
        code, headers, body = await request(
            b'PUT', origin + '/object', body=upload,
            headers=((b'content-length', b'%d' % SIZE),))
        async for _ in body:
            pass
    uploaded_from = dict(headers)[b'x-client-port'].decode()
    uploaded_code = code.decode()

    received = 0
    code, headers, body = await request(b'GET', origin + '/object')
    with progress_bar('Download', SIZE) as bar:
        async for chunk in body:
            received += len(chunk)
            bar.update(len(chunk))
    downloaded_from = dict(headers)[b'x-client-port'].decode()
    await close()

    seconds = time.monotonic() - started
    print(f'Server       {origin}')
    print(f'Upload       {uploaded_code}, {SIZE} bytes, from port {uploaded_from}')
    print(f'Download     {code.decode()}, {received} bytes, to port {downloaded_from}')
    print(f'Time         {seconds:.2f} seconds')
    is_same = uploaded_from == downloaded_from
    print('Connection   ' + ('the second request reused the first one\'s' if is_same
                             else 'the second request opened a new one'))
    return is_same and received == SIZE


async def fetch(url, output):
    request, close = Pool()
    try:
        code, headers, body = await request(b'GET', url)
        lengths = [int(value) for name, value in headers if name == b'content-length']
        with progress_bar(code.decode(), lengths[0] if lengths else None) as bar:
            async for chunk in body:
                output.write(chunk)
                bar.update(len(chunk))
    finally:
        await close()
    return code.startswith(b'2')


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('url', nargs='?')
    parser.add_argument('--output', '-o', metavar='FILE', help='instead of standard output')
    args = parser.parse_args()

    if args.url is None:
        with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                is_good = asyncio.run(show_round_trip(f'http://127.0.0.1:{server.server_port}'))
            finally:
                server.shutdown()
                thread.join()
    else:
        try:
            if args.output is None:
                is_good = asyncio.run(fetch(args.url, sys.stdout.buffer))
            else:
                with open(args.output, 'wb') as output:
                    is_good = asyncio.run(fetch(args.url, output))
        except (HttpError, OSError) as error:
            sys.exit(f'{type(error).__name__}: {error}')
    sys.exit(not is_good)


if __name__ == '__main__':
    main()
