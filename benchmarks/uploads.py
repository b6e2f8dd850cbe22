"""Measures uploads side by side: µs of CPU for each chunk, and MB for each second of CPU.

    python benchmarks/uploads.py
    python benchmarks/uploads.py --rounds 3 --only plain
    python benchmarks/uploads.py --other PATH/TO/site-packages

The body is an async generator that yields chunks of 1, 16 or 64 KiB and never waits, with a
`content-length`. The floor is a loop that blocks, with one `sendall` for each chunk. A server in a
process of its own reads and answers, with a thread for each connection, on one core. The clients
run on another one. Each measurement is a fresh process, which makes a small request first, and
then counts the CPU time of the process around the upload. The clients take turns, round by round,
and the medians count. Only numbers of one run are comparable.

`--other` is a directory with another lowhaio, such as an older release, which is measured too.
Needs aiohttp and trustme.
"""
import argparse
import asyncio
import contextlib
import json
import re
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from server import pin

HERE = Path(__file__).resolve()
KIB = 1024
MIB = 1024 * KIB
SIZES = {1 * KIB: 64 * MIB, 16 * KIB: 256 * MIB, 64 * KIB: 512 * MIB}
SCHEMES = {'plain': 'http', 'TLS': 'https'}
CLIENTS = ('floor', 'lowhaio', 'aiohttp')


# The server, which runs in a process of its own until its stdin closes
# ---------------------------------------------------------------------

def serve(directory):
    import trustme
    ca = trustme.CA()
    ca.cert_pem.write_to_path(directory / 'ca.pem')
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert('127.0.0.1').configure_cert(context)
    urls = {}
    for scheme in SCHEMES.values():
        listener = socket.create_server(('127.0.0.1', 0))
        urls[scheme] = f'{scheme}://127.0.0.1:{listener.getsockname()[1]}/'
        in_thread(accept_all, listener, context if scheme == 'https' else None)
    print(json.dumps(urls), flush=True)
    sys.stdin.read()


def in_thread(function, *args):
    threading.Thread(target=function, args=args, daemon=True).start()


def accept_all(listener, context):
    while True:
        in_thread(serve_connection, listener.accept()[0], context)


def serve_connection(sock, context):
    with contextlib.suppress(OSError), sock:
        if context is not None:
            sock = context.wrap_socket(sock, server_side=True)
        buffer = memoryview(bytearray(256 * KIB))
        head = b''
        while data := sock.recv(64 * KIB):
            head += data
            if b'\r\n\r\n' not in head:
                continue
            head, _, content = head.partition(b'\r\n\r\n')
            left = int(re.search(rb'\ncontent-length: *(\d+)', head.lower())[1]) - len(content)
            while left and (got := sock.recv_into(buffer)):
                left -= got
            sock.sendall(b'HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n')
            head = b''


@contextlib.contextmanager
def server():
    """Yield the path of the certificate, and the URLs by their schemes."""
    with tempfile.TemporaryDirectory() as directory, subprocess.Popen(
            (sys.executable, HERE, '--serve', directory),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        urls = json.loads(process.stdout.readline())
        yield str(Path(directory, 'ca.pem')), urls
        process.stdin.close()


# The clients, each as a function that makes one upload
# -----------------------------------------------------

async def chunks(chunk, number):
    for _ in range(number):
        yield chunk


@contextlib.asynccontextmanager
async def floor(url, context):
    port = int(url.rpartition(':')[2].strip('/'))
    with socket.create_connection(('127.0.0.1', port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if url.startswith('https'):
            sock = context.wrap_socket(sock, server_hostname='127.0.0.1')

        async def upload(chunk, number):
            sock.sendall(b'PUT / HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: %d\r\n\r\n' % (
                len(chunk) * number))
            for _ in range(number):
                sock.sendall(chunk)
            assert sock.recv(64 * KIB).startswith(b'HTTP/1.1 200')

        yield upload
        sock.close()


@contextlib.asynccontextmanager
async def lowhaio(url, context):
    from lowhaio import Pool, buffered
    request, close = Pool(get_ssl_context=lambda: context)

    async def upload(chunk, number):
        code, _, body = await request(
            b'PUT', url, body=chunks, body_args=(chunk, number),
            headers=((b'content-length', b'%d' % (len(chunk) * number)),))
        await buffered(body)
        assert code == b'200', code

    yield upload
    await close()


@contextlib.asynccontextmanager
async def aiohttp(url, context):
    from aiohttp import ClientSession, TCPConnector
    async with ClientSession(connector=TCPConnector(ssl=context)) as session:
        async def upload(chunk, number):
            length = {'content-length': str(len(chunk) * number)}
            async with session.put(url, data=chunks(chunk, number), headers=length) as response:
                await response.read()
                assert response.status == 200, response.status

        yield upload


async def measure(client, url, ca, size):
    context = ssl.create_default_context(cafile=ca)
    context.set_alpn_protocols(['http/1.1'])
    number = SIZES[size] // size
    async with {'floor': floor, 'aiohttp': aiohttp}.get(client, lowhaio)(url, context) as upload:
        await upload(bytes(size), 16)
        chunk = bytes(size)
        cpu = time.process_time()
        await upload(chunk, number)
        return (time.process_time() - cpu) / number * 1e6


# Rounds, and what is shown
# -------------------------

def start(job, path):
    """What a process of its own has measured."""
    return float(subprocess.run(
        (sys.executable, HERE, '--path', path, '--measure', json.dumps(job)),
        check=True, stdout=subprocess.PIPE, text=True).stdout)


def show(scheme, size, found):
    medians = {client: statistics.median(all_of) for client, all_of in found.items()}
    for client, micros in medians.items():
        spread = (max(found[client]) - min(found[client])) / micros
        print(f'| {scheme}, {size // KIB} KiB | {client} | {micros:.2f} | {size / micros:,.0f} | '
              f'{medians["floor"] / micros:.2f} | {spread:.0%} |', flush=True)


def run(args):
    pin(0)
    paths = dict.fromkeys(CLIENTS, str(HERE.parents[1])) | (
        {'other lowhaio': args.other} if args.other else {})
    with server() as (ca, urls):
        pin(1)
        print('| upload | client | µs of CPU for a chunk | MB per CPU second | to the floor '
              '| spread |')
        print('| --- | --- | --- | --- | --- | --- |')
        for scheme in args.schemes:
            for size in args.sizes:
                found = {client: [] for client in paths}
                for _ in range(args.rounds):
                    for client, path in paths.items():
                        job = (client, urls[SCHEMES[scheme]], ca, size)
                        found[client].append(start(job, path))
                show(scheme, size, found)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--only', dest='schemes', nargs='*', choices=SCHEMES, default=[*SCHEMES])
    parser.add_argument('--chunks', dest='sizes', nargs='*', type=lambda text: int(text) * KIB,
                        metavar='KIB', default=[*SIZES], help='1, 16 or 64 (default: all)')
    parser.add_argument('--other', help='where another lowhaio is')
    parser.add_argument('--serve', type=Path, help=argparse.SUPPRESS)
    parser.add_argument('--measure', type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument('--path', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
    elif args.measure:
        sys.path.insert(0, args.path)
        print(asyncio.run(measure(*args.measure)))
    else:
        run(args)


if __name__ == '__main__':
    main()
