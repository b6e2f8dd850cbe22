"""Prints the instructions of a request that a client executes in user space.

    python benchmarks/instructions.py
    python benchmarks/instructions.py --only small,small-32 --clients lowhaio
    python benchmarks/instructions.py --library ../other-checkout --clients lowhaio

valgrind's cachegrind counts them, so they are the same on any machine, whatever else it does. Each
number comes from two processes that differ only in how many requests they make: the difference of
their instructions, divided by that of their requests. So neither imports nor the first connections
are in it. The server is another process, which is not counted, and nor is the kernel.

The response has 100 bytes of content and 8 fields. The floor is that of run.py. Nothing is between
the loop that makes the requests and the client. It needs valgrind, and for aiohttp what
`pip install ".[bench]"` installs.
"""
import argparse
import asyncio
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from clients import FloorConnection, request_message
from server import SMALL, scripted
from setting import BYTE_FIELDS, FIELDS

HERE = Path(__file__).resolve().parent
VALGRIND = (
    'valgrind', '--tool=cachegrind', '--cache-sim=no', '--cachegrind-out-file=/dev/null')
# For each workload, what it is, how many requests are made at once, whether they have fields, and
# the numbers of requests of the two processes.
WORKLOADS = {
    'small': ('one at a time', 1, False, (500, 1500)),
    'small-fields': ('one at a time, with 4 request fields', 1, True, (500, 1500)),
    'small-32': ('32 at once', 32, False, (640, 1920)),
    'small-512': ('512 at once', 512, False, (2048, 8192)),
}


# What is counted
# ---------------

# A client makes so many requests one after the other, as often at once as the workload has it.

async def floor(url, has_fields, run):
    loop = asyncio.get_running_loop()
    fields = ''.join(f'{name}: {value}\r\n' for name, value in FIELDS.items())
    message = request_message('GET', url, fields * has_fields)
    connections = []

    async def make(connection, number):
        for _ in range(number):
            await connection.exchange()

    def make_over_connection(index, number):
        if index == len(connections):
            connections.append(FloorConnection(loop, None, url, message))
        return make(connections[index], number)

    await run(make_over_connection)


async def lowhaio(url, has_fields, run):
    from lowhaio import Pool, buffered
    request, close = Pool()

    async def make(_, number):
        for _ in range(number):
            _, _, body = await request(b'GET', url)
            assert len(await buffered(body)) == SMALL

    async def make_with_fields(_, number):
        for _ in range(number):
            _, _, body = await request(b'GET', url, headers=BYTE_FIELDS)
            assert len(await buffered(body)) == SMALL

    await run(make_with_fields if has_fields else make)
    await close()


async def aiohttp(url, has_fields, run):
    from aiohttp import ClientSession, TCPConnector
    async with ClientSession(connector=TCPConnector(limit=0)) as session:
        async def make(_, number):
            for _ in range(number):
                async with session.get(url) as response:
                    assert len(await response.read()) == SMALL

        async def make_with_fields(_, number):
            for _ in range(number):
                async with session.get(url, headers=FIELDS) as response:
                    assert len(await response.read()) == SMALL

        await run(make_with_fields if has_fields else make)


CLIENTS = {'floor': floor, 'lowhaio': lowhaio, 'aiohttp': aiohttp}


async def make_requests(client, workload, url, requests):
    """What cachegrind looks at: a few requests that open the connections, and then so many."""
    _, concurrency, has_fields, _ = WORKLOADS[workload]

    async def run(make):
        for number in (2, requests // concurrency):
            await asyncio.gather(*(make(index, number) for index in range(concurrency)))

    await CLIENTS[client](url, has_fields, run)


# Counting
# --------

def instructions_of_request(args, client, workload, url):
    """Returns the instructions of a request, or why they were not counted."""
    counts = []
    *_, numbers = WORKLOADS[workload]
    for number in numbers:
        command = (*VALGRIND, sys.executable, __file__, '--library', args.library.resolve(),
                   '--make', client, workload, url, str(number))
        process = subprocess.run(
            command, check=False, stderr=subprocess.PIPE, text=True,
            env={**os.environ, 'PYTHONHASHSEED': '0'})
        if process.returncode:
            lines = [line for line in process.stderr.splitlines() if not line.startswith('==')]
            return lines[-1] if lines else f'valgrind ended with {process.returncode}'
        refs = re.search(r'I +refs: +([\d,]+)', process.stderr)[1]
        counts.append(int(refs.replace(',', '')))
    return (counts[1] - counts[0]) / (numbers[1] - numbers[0])


def print_table(args):
    """Returns the failures."""
    print(f'{"":14}' + ''.join(f'{client:>12}' for client in args.clients))
    failures = []
    with scripted() as origins:
        for workload in args.only:
            print(f'{workload:14}', end='', flush=True)
            for client in args.clients:
                found = instructions_of_request(
                    args, client, workload, origins['scripted'] + '/small')
                is_failed = isinstance(found, str)
                print(f'{"failed" if is_failed else format(found, ",.0f"):>12}', end='',
                      flush=True)
                if is_failed:
                    failures.append(f'{client} failed in {workload}: {found}')
            print()
    return failures


def listed(known):
    def parse(text):
        names = text.split(',')
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f'{name!r} is not one of {", ".join(known)}')
        return names

    return parse


def parse_args():
    workloads = '\n'.join(f'  {name:14}{what}' for name, (what, *_) in WORKLOADS.items())
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f'workloads:\n{workloads}')
    parser.add_argument('--only', type=listed(WORKLOADS), default=list(WORKLOADS),
                        metavar='WORKLOAD,…')
    parser.add_argument('--clients', type=listed(CLIENTS), default=list(CLIENTS),
                        metavar='CLIENT,…', help=', '.join(CLIENTS))
    parser.add_argument('--library', type=Path, default=HERE.parent,
                        help='the directory of the lowhaio that is measured: this checkout')
    parser.add_argument('--make', nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    args = parse_args()
    if args.make:
        sys.path.insert(0, str(args.library))
        *what, number = args.make
        asyncio.run(make_requests(*what, int(number)))
        return
    print(f'Instructions of a request, {platform.python_implementation()} '
          f'{platform.python_version()}')
    failures = print_table(args)
    print('\n'.join(failures), end='\n' * bool(failures))
    sys.exit(bool(failures))


if __name__ == '__main__':
    main()
