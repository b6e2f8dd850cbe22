"""Measures a request and a response that are under way at the same time, and each of them alone.

    python benchmarks/both_ways.py
    python benchmarks/both_ways.py --quick
    python benchmarks/both_ways.py --rounds 9 --size 1073741824 --only plain,asyncio

both      an upload to a server that sends each byte back while the rest of the upload is coming
up        the same upload, to a server that only reads
down      a download of as much
memory    the peak of lowhaio's process while 1 GiB goes both ways

All bodies are in the chunked coding, in chunks of 64 KiB. lowhaio sends from within the reading of
the response, and aiohttp sends in a task. The server is a process of its own with a thread for
each connection, on one core, and the clients run on another. Each measurement is a fresh process,
which makes a small request first, and then takes the CPU time of the process, with all threads,
around the transfer. The clients take turns, round by round, and medians are shown. Only numbers of
one run are comparable.

It exits with 1 if lowhaio uses more than 0.7 of aiohttp's CPU for both ways, or more memory than
40 MiB. A process that fails is shown with the reason. Needs aiohttp and trustme, and uvloop if it
is to be measured.
"""
import argparse
import contextlib
import importlib.util
import json
import os
import platform
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from measure import Failed, memory, runner
from server import pin

HERE = Path(__file__).resolve()
CHUNK = bytes(65536)
ENCODED = b'%x\r\n%b\r\n' % (len(CHUNK), CHUNK)
LAST = b'0\r\n\r\n'
MIB = 2 ** 20
SIZE = 256 * MIB
QUICK_SIZE = 32 * MIB
WHOLE = 1024 * MIB

AIM = 0.7
LIMIT = 40 * MIB

SCHEMES = {'plain': 'http', 'TLS': 'https'}
LOOPS = ('asyncio', 'uvloop')
CLIENTS = ('lowhaio', 'aiohttp')
WAYS = ('both', 'up', 'down')


# The server, which runs in a process of its own until its stdin closes
# ---------------------------------------------------------------------

def serve(directory):
    import trustme
    ca = trustme.CA()
    ca.cert_pem.write_to_path(directory / 'ca.pem')
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert('127.0.0.1').configure_cert(context)

    listeners = {scheme: socket.create_server(('127.0.0.1', 0)) for scheme in SCHEMES.values()}
    in_thread(accept_all, listeners['http'], lambda sock: sock)
    in_thread(accept_all, listeners['https'], lambda sock: context.wrap_socket(
        sock, server_side=True))
    print(json.dumps({scheme: f'{scheme}://127.0.0.1:{listener.getsockname()[1]}'
                      for scheme, listener in listeners.items()}), flush=True)
    sys.stdin.read()


def in_thread(function, *args):
    threading.Thread(target=function, args=args, daemon=True).start()


def accept_all(listener, wrap):
    while True:
        in_thread(serve_connection, listener.accept()[0], wrap)


def serve_connection(sock, wrap):
    with contextlib.suppress(OSError), sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with wrap(sock) as wrapped:
            buffer = memoryview(bytearray(262144))
            while serve_exchange(wrapped, buffer):
                pass


def serve_exchange(sock, buffer):
    """Answer one request. Returns whether the connection goes on."""
    data = b''
    while b'\r\n\r\n' not in data:
        got = sock.recv(65536)
        if not got:
            return False
        data += got
    head, _, rest = data.partition(b'\r\n\r\n')
    path, _, size = head.split(b' ')[1].partition(b'?')
    if path == b'/up':
        for _ in encoded(sock, buffer, rest):
            pass
    sock.sendall(b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n')
    if path == b'/both':
        # The request is encoded as the response has to be.
        for data in encoded(sock, buffer, rest):
            sock.sendall(data)
    else:
        for _ in range(int(size or 0) // len(CHUNK)):
            sock.sendall(ENCODED)
        sock.sendall(LAST)
    return True


def encoded(sock, buffer, data):
    """What there is of a body in the chunked coding, up to its end. The content has only zeros,
    so the last chunk is found by its bytes."""
    tail = b''
    while True:
        yield data
        tail = (tail + bytes(data[-len(LAST):]))[-len(LAST):]
        if tail == LAST:
            return
        got = sock.recv_into(buffer)
        if not got:
            raise ConnectionResetError
        data = buffer[:got]


@contextlib.contextmanager
def server():
    """Yield the directory of the certificate, and the origins by their schemes."""
    with tempfile.TemporaryDirectory() as directory, subprocess.Popen(
            (sys.executable, HERE, '--serve', directory),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield directory, json.loads(process.stdout.readline())
        process.stdin.close()


# The clients
# -----------

async def content(size):
    for _ in range(size // len(CHUNK)):
        yield CHUNK


@contextlib.asynccontextmanager
async def lowhaio_client(ca):
    sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[1] / 'layers/chunked')]
    from lowhaio import Pool
    from lowhaio_chunked import chunked

    request, close = Pool(get_ssl_context=lambda: ssl.create_default_context(cafile=ca))

    async def transfer(url, size):
        if size:
            code, _, body = await request(
                b'POST', url, headers=((b'transfer-encoding', b'chunked'),),
                body=chunked(content), body_args=(size,))
        else:
            code, _, body = await request(b'GET', url)
        check(code == b'200', code)
        return await length(body)

    yield transfer
    await close()


@contextlib.asynccontextmanager
async def aiohttp_client(ca):
    import aiohttp

    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=ca))
    async with aiohttp.ClientSession(connector=connector) as session:
        async def transfer(url, size):
            method, data = ('POST', content(size)) if size else ('GET', None)
            async with session.request(method, url, data=data) as response:
                check(response.status == 200, response.status)
                return await length(response.content.iter_any())

        yield transfer


async def length(chunks):
    total = 0
    async for chunk in chunks:
        total += len(chunk)
    return total


def check(is_right, found):
    if not is_right:
        raise Failed(f'this was not expected: {found}')


async def measure(job):
    size, way = job['size'], job['way']
    make_client = {'lowhaio': lowhaio_client, 'aiohttp': aiohttp_client}[job['client']]
    async with make_client(job['ca']) as transfer:
        await transfer(job['origin'] + '/small', 0)
        url = f'{job["origin"]}/{way}' + (f'?{size}' if way == 'down' else '')
        cpu, start = time.process_time(), time.monotonic()
        got = await transfer(url, 0 if way == 'down' else size)
        result = {'cpu': time.process_time() - cpu, 'seconds': time.monotonic() - start,
                  'peak': memory('VmHWM')}
    check(got == (0 if way == 'up' else size), f'{got} bytes of content')
    return result


# Rounds, and what is shown
# -------------------------

def start(args, ca, origins, client, scheme, loop, way, size):
    """What a process of its own has measured, or None. Then the reason is shown."""
    job = {'client': client, 'origin': origins[SCHEMES[scheme]], 'loop': loop, 'way': way,
           'size': size, 'ca': ca}
    try:
        process = subprocess.run(
            (sys.executable, HERE, '--measure', json.dumps(job)), check=False,
            capture_output=True, text=True, timeout=args.timeout, env=environment())
    except subprocess.TimeoutExpired:
        reason = f'it took more than {args.timeout:g} seconds'
    else:
        if not process.returncode:
            return json.loads(process.stdout)
        reason = (process.stderr.strip().splitlines() or ['nothing was said'])[-1]
    print(f'{client}, {scheme}, {loop}, {way} failed: {reason}')
    return None


def environment():
    """Modules are compiled once: to compile lowhaio takes more memory than it will use."""
    return {name: value for name, value in os.environ.items()
            if name != 'PYTHONDONTWRITEBYTECODE'}


class Figures:
    """The measurements of a scheme and a loop, by client and way."""

    def __init__(self):
        self.found = {}

    def add(self, client, way, result):
        if result is not None:
            self.found.setdefault((client, way), []).append(result)

    def median(self, client, way, key):
        found = self.found.get((client, way))
        return statistics.median(result[key] for result in found) if found else float('nan')


def show_ways(scheme, loop, figures, size):
    """Print a row. Returns whether the aim is reached."""
    mib = size / MIB

    def cpu(client, way):
        return figures.median(client, way, 'cpu') / mib * 1e6

    def speed(way):
        return mib / figures.median('lowhaio', way, 'seconds')

    own = cpu('lowhaio', 'both')
    ratio = own / cpu('aiohttp', 'both')
    cells = (own, cpu('aiohttp', 'both'), ratio, cpu('lowhaio', 'up'), cpu('lowhaio', 'down'),
             own / (cpu('lowhaio', 'up') + cpu('lowhaio', 'down')), *map(speed, WAYS),
             speed('both') / min(speed('up'), speed('down')))
    formats = ('.0f', '.0f', '.2f', '.0f', '.0f', '.2f', '.0f', '.0f', '.0f', '.2f')
    print(f'{scheme + ", " + loop:16}' + ''.join(
        f'{cell:>{width}{form}}' for cell, form, width in zip(cells, formats, WIDTHS, strict=True))
        + ('' if ratio <= AIM else '   MISSED'), flush=True)
    return ratio <= AIM


TITLES = ('lowhaio', 'aiohttp', 'ratio', 'up', 'down', 'to the sum', 'MiB/s both', 'up', 'down',
          'to the lesser')
WIDTHS = tuple(max(9, len(title) + 2) for title in TITLES)


def run(args):
    pin(0)
    schemes = [scheme for scheme in SCHEMES if not args.only or scheme in args.only]
    loops = [loop for loop in LOOPS if not (args.only and set(args.only) & set(LOOPS))
             or loop in args.only]
    if 'uvloop' in loops and importlib.util.find_spec('uvloop') is None:
        loops.remove('uvloop')
        print('uvloop is not installed')
    kept = True
    with server() as (directory, origins):
        pin(1)
        ca = os.path.join(directory, 'ca.pem')
        print(f'{platform.python_implementation()} {platform.python_version()}, '
              f'{platform.machine()}; medians of {args.rounds}; {args.size:,} bytes each way\n'
              f'µs of CPU for each MiB; ratio: of both ways, aim ≤ {AIM}')
        print(f'{"":16}' + ''.join(
            f'{title:>{width}}' for title, width in zip(TITLES, WIDTHS, strict=True)), flush=True)
        for scheme in schemes:
            for loop in loops:
                figures = Figures()
                for _ in range(args.rounds):
                    for way in WAYS:
                        for client in CLIENTS[:None if way == 'both' else 1]:
                            figures.add(client, way, start(
                                args, ca, origins, client, scheme, loop, way, args.size))
                kept &= show_ways(scheme, loop, figures, args.size)
        print(f'\nPeak memory while {args.whole:,} bytes go both ways, at most {LIMIT // MIB} MiB')
        for scheme in schemes:
            for loop in loops:
                result = start(args, ca, origins, 'lowhaio', scheme, loop, 'both', args.whole)
                peak = result['peak'] if result else float('nan')
                kept &= peak < LIMIT
                print(f'{scheme + ", " + loop:16}{peak / MIB:>9.1f}'
                      + ('' if peak < LIMIT else '   MISSED'), flush=True)
    return kept


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, help='measurements of each kind (default: 5)')
    parser.add_argument('--size', type=int, help=f'bytes each way (default: {SIZE:,})')
    parser.add_argument('--only', type=lambda text: text.split(','),
                        help=f'some of {",".join((*SCHEMES, *LOOPS))}')
    parser.add_argument('--timeout', type=float, default=120, help='seconds for a measurement')
    parser.add_argument('--quick', action='store_true', help='only show that it works')
    parser.add_argument('--serve', type=Path, help=argparse.SUPPRESS)
    parser.add_argument('--measure', type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
    elif args.measure:
        with runner(args.measure['loop'] == 'uvloop') as loop_runner:
            print(json.dumps(loop_runner.run(measure(args.measure))))
    else:
        args.rounds = args.rounds or (1 if args.quick else 5)
        args.size = args.size or (QUICK_SIZE if args.quick else SIZE)
        args.whole = QUICK_SIZE if args.quick else WHOLE
        sys.exit(not run(args))


if __name__ == '__main__':
    main()
