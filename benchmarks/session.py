"""Measures what lowhaio-session costs: µs of CPU for a GET, beside the bare core and httpx2.

    python benchmarks/session.py
    python benchmarks/session.py --instructions

Each client gets 100 bytes of JSON with 8 header fields, one request at a time over one connection,
from a server in a process of its own, and parses them. Each measurement is made in a fresh process
and counts its CPU time, system calls included. The rounds take turns, and the medians count.

With `--instructions`, cachegrind counts the instructions in user space instead, which are the same
on any machine. The clients of lowhaio then have their server in the same process, as guard.py has
it, so that its share is in all of them.
"""
import argparse
import asyncio
import gc
import json
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), *map(str, ROOT.glob('layers/*/'))]

CONTENT = json.dumps({'text': 'x' * 88}).encode()
RESPONSE = (b'HTTP/1.1 200 OK\r\nserver: nginx\r\ndate: Sat, 01 Nov 2025 12:00:00 GMT\r\n'
            b'content-type: application/json\r\nlast-modified: Sat, 01 Nov 2025 11:00:00 GMT\r\n'
            b'etag: "6905e8f0-64"\r\naccept-ranges: bytes\r\ncontent-length: %d\r\n'
            b'connection: keep-alive\r\n\r\n%b' % (len(CONTENT), CONTENT))


# ------------------------------------------------------------------------------- the server


class Answering(asyncio.Protocol):
    """Each request arrives whole."""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        assert data.endswith(b'\r\n\r\n')
        self.transport.write(RESPONSE)


async def serve():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Answering, '127.0.0.1', 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    # Ends with whoever has started it.
    await loop.run_in_executor(None, sys.stdin.read)


async def in_this_process():
    """A `get_connection` to a server at the other end of a socket pair."""
    import guard
    guard.RESPONSES[b'/'] = RESPONSE
    return guard.Server()


# ------------------------------------------------------------------------------ the clients
#
# Each yields a coroutine function that makes one request, and the content of its response.

async def core(url, **options):
    from lowhaio import Pool, buffered
    request, close = Pool(**options)

    async def get():
        _, _, body = await request(b'GET', url)
        return json.loads(await buffered(body))

    yield get
    await close()


async def core_with_fields(url, **options):
    """The core, with the two header fields that a session sends."""
    from lowhaio import Pool, buffered
    request, close = Pool(**options)
    headers = ((b'user-agent', b'lowhaio/0.1.0'), (b'accept-encoding', b'gzip, deflate, br, zstd'))

    async def get():
        _, _, body = await request(b'GET', url, headers=headers)
        return json.loads(await buffered(body))

    yield get
    await close()


async def session(url, **options):
    from lowhaio_session import Session
    async with Session(url.removesuffix('/'), **options) as http:
        async def get():
            return await (await http.get('/')).json()

        yield get


async def httpx2(url):
    from httpx2 import AsyncClient
    async with AsyncClient(base_url=url) as http:
        async def get():
            return (await http.get('/')).json()

        yield get


CLIENTS = {'core': core, 'core, two fields': core_with_fields, 'session': session,
           'httpx2': httpx2}


async def measure(name, url, requests):
    """µs of CPU for each request."""
    client = CLIENTS[name](url)
    get = await anext(client)
    for _ in range(requests // 10):
        assert await get() == json.loads(CONTENT)
    gc.collect()
    start = time.process_time()
    for _ in range(requests):
        await get()
    print((time.process_time() - start) / requests * 1e6)
    await client.aclose()


async def repeat(name, requests):
    """For cachegrind: so many requests, and nothing else that depends on their number."""
    gc.disable()
    server = await in_this_process()
    client = CLIENTS[name]('http://localhost/', get_connection=server.get_connection)
    get = await anext(client)
    for _ in range(requests):
        await get()
    await client.aclose()
    server.close()


# ------------------------------------------------------------------------------------ rounds


def run(*args, wrapper=(), **options):
    return subprocess.run([*wrapper, sys.executable, __file__, *map(str, args)], check=True,
                          text=True, capture_output=True, **options)


def times(rounds, requests):
    with subprocess.Popen([sys.executable, __file__, '--serve'], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as server:
        url = f'http://127.0.0.1:{server.stdout.readline().strip()}/'
        found = {name: [] for name in CLIENTS}
        for _ in range(rounds):
            for name in CLIENTS:
                found[name].append(float(run('--measure', name, url, requests).stdout))
        server.stdin.close()
    return {name: statistics.median(figures) for name, figures in found.items()}


def counted(name, requests):
    printed = run('--repeat', name, requests, env={'PYTHONHASHSEED': '0'}, wrapper=(
        'valgrind', '--tool=cachegrind', '--cache-sim=no',
        '--cachegrind-out-file=/dev/null')).stderr
    return int(re.search(r'I\s+refs:\s+([\d,]+)', printed)[1].replace(',', ''))


def instructions():
    """Those of a request, without what is done once."""
    for name in CLIENTS:
        if name != 'httpx2':
            # Modules that have changed are compiled here, which would be counted otherwise.
            run('--repeat', name, 1, env={'PYTHONHASHSEED': '0'})
    return {name: (counted(name, 500) - counted(name, 100)) / 400
            for name in CLIENTS if name != 'httpx2'}


def report(figures, unit):
    print(f'{platform.python_implementation()} {platform.python_version()}, {platform.machine()}')
    print(f'{"":20}{unit:>14}{"to core":>10}{"to httpx2":>12}')
    for name, figure in figures.items():
        print(f'{name:20}{figure:14,.0f}{figure / figures["core"]:10.2f}'
              + (f'{figure / figures["httpx2"]:12.2f}' if 'httpx2' in figures else ''))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--requests', type=int, default=3000, help='of each measurement')
    parser.add_argument('--instructions', action='store_true')
    parser.add_argument('--serve', action='store_true', help=argparse.SUPPRESS)
    parser.add_argument('--measure', nargs=3, help=argparse.SUPPRESS)
    parser.add_argument('--repeat', nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        asyncio.run(serve())
    elif args.measure:
        name, url, requests = args.measure
        asyncio.run(measure(name, url, int(requests)))
    elif args.repeat:
        asyncio.run(repeat(args.repeat[0], int(args.repeat[1])))
    elif args.instructions:
        report(instructions(), 'instructions')
    else:
        report(times(args.rounds, args.requests), 'µs')


if __name__ == '__main__':
    main()
