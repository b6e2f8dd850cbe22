"""Measures downloads to a file side by side: seconds of CPU for each GB.

    python benchmarks/download.py

A server in a process of its own sends a file, by `sendfile`. Each measurement is made in a fresh
process, which downloads it to a file in `/dev/shm` and counts its CPU time, system calls and the
threads included. The rounds take turns, and the medians count. `--folder` is where the file goes,
`--size` is in MB, `--rounds` and `--only` change how long it takes.

The loop is `async for chunk in body: file.write(chunk)` with lowhaio, which checks nothing.
`--turns` measures something else: how long the event loop was kept from its turns, at most, while
a download was written to the folder.
"""
import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'layers' / 'retry'), str(ROOT / 'layers' / 'download')]


# ------------------------------------------------------------------------------- the server

def serve(size):
    """Print the port, and answer until standard input ends."""
    with tempfile.TemporaryFile(dir='/dev/shm') as file:
        file.truncate(size)
        listener = socket.create_server(('127.0.0.1', 0))
        print(listener.getsockname()[1], flush=True)
        threading.Thread(target=accept, args=(listener, file, size), daemon=True).start()
        sys.stdin.read()


def accept(listener, file, size):
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=answer, args=(sock, file, size), daemon=True).start()


def answer(sock, file, size):
    try:
        while True:
            head = b''
            while not head.endswith(b'\r\n\r\n'):
                data = sock.recv(65536)
                if not data:
                    return
                head += data
            start, stop = range_of(head.lower(), size)
            fields = b'etag: "1"\r\ncontent-length: %d\r\n\r\n' % (stop - start)
            sock.sendall(b'HTTP/1.1 200 OK\r\n' + fields if b'\r\nrange:' not in head.lower() else
                         b'HTTP/1.1 206 Partial Content\r\ncontent-range: bytes %d-%d/%d\r\n' % (
                             start, stop - 1, size) + fields)
            while start < stop:
                start += os.sendfile(sock.fileno(), file.fileno(), start, stop - start)
    except OSError:
        pass  # the client hung up


def range_of(head, size):
    if b'\r\nrange: bytes=' not in head:
        return 0, size
    start, stop = head.partition(b'\r\nrange: bytes=')[2].partition(b'\r\n')[0].split(b'-')
    return int(start), int(stop or size - 1) + 1


# ------------------------------------------------------------------------------ the clients

async def loop(url, path):
    from lowhaio import Pool
    request, close = Pool()
    _, _, body = await request(b'GET', url)
    with open(path, 'wb') as file:
        async for chunk in body:
            file.write(chunk)
    await close()


async def layer(url, path, **options):
    from lowhaio import Pool
    from lowhaio_download import download
    request, close = Pool()
    await download(request, url, path, **options)
    await close()


async def layer_without_fsync(url, path):
    await layer(url, path, fsync=False)


async def layer_in_parallel(url, path):
    await layer(url, path, parallel=4)


async def aiohttp(url, path):
    from aiohttp import ClientSession
    async with ClientSession() as session, session.get(url) as response:
        with open(path, 'wb') as file:
            async for chunk in response.content.iter_any():
                file.write(chunk)


async def httpx2(url, path):
    from httpx2 import AsyncClient
    async with AsyncClient() as client, client.stream('GET', url) as response:
        with open(path, 'wb') as file:
            async for chunk in response.aiter_raw():
                file.write(chunk)


CLIENTS = {
    'the loop': loop,
    'download': layer,
    'download, fsync=False': layer_without_fsync,
    'download, parallel=4': layer_in_parallel,
    'aiohttp': aiohttp,
    'httpx2': httpx2,
}


def measure(name, url, size, folder):
    """Print the seconds of CPU, or why there are none."""
    path = Path(folder, 'downloaded')
    # What a client needs is not imported while it is measured.
    import_module(name if name in ('aiohttp', 'httpx2') else 'lowhaio_download')
    try:
        client = CLIENTS[name](url, path)
        before = time.process_time()
        asyncio.run(client)
        print(time.process_time() - before)
        assert path.stat().st_size == size
    finally:
        path.unlink(missing_ok=True)


def measure_turns(url, folder):
    """Print how long the loop was kept from its turns, at most, in ms."""
    async def main():
        longest, last = 0, time.monotonic()
        task = asyncio.ensure_future(layer(url, path))
        while not task.done():
            await asyncio.sleep(0)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        await task
        return longest * 1000

    import_module('lowhaio_download')
    path = Path(folder, 'downloaded')
    try:
        print(asyncio.run(main()))
    finally:
        path.unlink(missing_ok=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', type=int, default=1000)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--folder', default='/dev/shm')
    parser.add_argument('--only', nargs='*', choices=CLIENTS, default=[*CLIENTS])
    parser.add_argument('--turns', action='store_true')
    parser.add_argument('--process', nargs='*', help=argparse.SUPPRESS)
    args = parser.parse_args()
    size = args.size * 10 ** 6
    if args.process == ['serve']:
        return serve(size)
    if args.process and args.turns:
        return measure_turns(args.process[1], args.folder)
    if args.process:
        return measure(*args.process, size, args.folder)

    def process(*names, **kwargs):
        return subprocess.Popen(
            [sys.executable, __file__, '--size', str(args.size), '--folder', args.folder,
             *(['--turns'] if args.turns else []), '--process', *names],
            stdout=subprocess.PIPE, text=True, **kwargs)

    names = ['download'] if args.turns else args.only
    taken = {name: [] for name in names}
    with process('serve', stdin=subprocess.PIPE) as server:
        url = f'http://127.0.0.1:{server.stdout.readline().strip()}/'
        for _ in range(args.rounds):
            for name in names:
                printed, _ = process(name, url).communicate()
                taken[name].append(float(printed) * (1 if args.turns else 10 ** 9 / size))
        server.stdin.close()
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    if args.turns:
        longest = ', '.join(f'{each:.1f}' for each in sorted(taken['download']))
        print(f'The longest times between two turns of the loop, in ms: {longest}')
        return None
    first = next(iter(medians.values()))
    print(f'| {args.size} MB to {args.folder} | s of CPU for 1 GB | to the first |')
    print('| --- | --- | --- |')
    for name, median in medians.items():
        print(f'| {name} | {median:.3f} | {median / first:.2f} |')
    return None


if __name__ == '__main__':
    main()
