"""Measures what connections and waiting requests cost, and what a resumed TLS session saves.

    python benchmarks/connections.py

at once      the CPU of a small request while 1 to 1,000 are made at once: each over its own
             connection, or all over 10 connections, so that the others wait; or one at a time,
             with as many idle connections, each to its own origin
in turn      how many connections are needed for requests to 20 origins if 10 may be open, and how
             long a request waits. The server is in the same process, and takes 5 to 15 ms
resumption   the CPU and the time of a new TLS connection and its request, with and without the
             session of the connection before, in TLS 1.2 and 1.3

The server is the nginx of server.py. It is pinned to one core, and the client to another. The
cases that are compared take turns, and medians are shown. Only numbers of one run are comparable.
Needs lowhaio and trustme.
"""
import argparse
import asyncio
import contextlib
import random
import ssl
import statistics
import tempfile
import time
from pathlib import Path

from server import nginx, pin

from lowhaio import Pool, buffered, get_sock_default

NUMBERS = (1, 10, 100, 1000)


async def measure_at_once(url, number, requests, **options):
    """The CPU of a request in µs, if `number` workers make requests at once."""
    request, close = Pool(**options)

    async def worker(number):
        for _ in range(number):
            _, _, body = await request(b'GET', url)
            await buffered(body)

    async def run(requests):
        await asyncio.gather(*[worker(requests // number) for _ in range(number)])

    await run(2 * number)
    start = time.process_time()
    await run(requests)
    cpu = time.process_time() - start
    await close()
    return cpu / requests * 1e6


async def measure_beside_idle(url, number, requests):
    """The CPU of a request in µs, if `number` connections to other origins are idle."""
    request, close = Pool()

    async def fetch(url):
        _, _, body = await request(b'GET', url)
        await buffered(body)

    for index in range(number):
        await fetch(url.replace('127.0.0.1', f'127.1.{index // 250}.{index % 250 + 1}'))
    await fetch(url)
    start = time.process_time()
    for _ in range(requests):
        await fetch(url)
    cpu = time.process_time() - start
    await close()
    return cpu / requests * 1e6


async def answer(reader, writer):
    # This ends with the client, or with the measurement.
    with contextlib.suppress(asyncio.IncompleteReadError, asyncio.CancelledError), \
            contextlib.closing(writer):
        while True:
            await reader.readuntil(b'\r\n\r\n')
            await asyncio.sleep(random.uniform(0.005, 0.015))
            writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok')


async def measure_in_turn(tasks, origins, requests, places):
    """How many connections are needed, and the median and longest time of a request in ms."""
    connections = 0
    times = []

    def get_sock(family):
        nonlocal connections
        connections += 1
        return get_sock_default(family)

    async def work():
        for number in numbers:
            start = time.perf_counter()
            _, _, body = await request(b'GET', f'http://127.0.1.{number}:{port}/')
            await buffered(body)
            times.append((time.perf_counter() - start) * 1e3)

    numbers = iter([random.randint(1, origins) for _ in range(requests)])
    async with await asyncio.start_server(answer, '0.0.0.0', 0) as server:
        port = server.sockets[0].getsockname()[1]
        request, close = Pool(max_connections=places, get_sock=get_sock)
        await asyncio.gather(*[work() for _ in range(tasks)])
        await close()
    return connections, statistics.median(times), max(times)


class Forgetful(ssl.SSLSocket):
    """A TLS socket that tells of no session, so that there is none to resume."""

    session = property(lambda self: None)


async def measure_new_connections(url, ca, version, is_resumed, number):
    """The CPU and the time of a connection with one request, in µs, and how many were resumed."""
    reused = []

    class Counting(ssl.SSLSocket if is_resumed else Forgetful):
        def do_handshake(self, *args):
            super().do_handshake(*args)
            reused.append(self.session_reused)

    context = ssl.create_default_context(cafile=ca)
    context.minimum_version = context.maximum_version = version
    context.sslsocket_class = Counting
    request, close = Pool(get_ssl_context=lambda: context, keep_alive_timeout=0)

    async def fetch(number):
        for _ in range(number):
            _, _, body = await request(b'GET', url)
            await buffered(body)

    await fetch(5)
    reused.clear()
    start, start_cpu = time.perf_counter(), time.process_time()
    await fetch(number)
    elapsed, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    await close()
    return cpu / number * 1e6, elapsed / number * 1e6, sum(reused)


def medians(rounds, cases):
    """The median of each case. The cases take turns in each round."""
    results = [[] for _ in cases]
    for _ in range(rounds):
        for case, result in zip(cases, results, strict=True):
            result.append(asyncio.run(case()))
    return [statistics.median(result) for result in results]


def show_at_once(args, origins):
    url = origins['http'] + '/small'
    ways = {
        'over as many connections': lambda number: measure_at_once(url, number, args.requests),
        'over 10 connections': lambda number: measure_at_once(
            url, number, args.requests, max_connections=10),
        'one at a time, beside idle ones': lambda number: measure_beside_idle(
            url, number, args.requests),
    }
    print(f'{"CPU of a request, µs":34}' + ''.join(f'{number:>8,}' for number in NUMBERS))
    for way, measure in ways.items():
        figures = medians(args.rounds, [lambda number=number, measure=measure: measure(number)
                                        for number in NUMBERS])
        print(f'{way:34}' + ''.join(f'{figure:8.1f}' for figure in figures), flush=True)


def show_in_turn(args):
    print(f'\n{"2,000 requests, 20 origins, 10 places":40}'
          f'{"connections":>12}{"median, ms":>12}{"longest, ms":>13}')
    for tasks in (10, 40, 400):
        rows = [asyncio.run(measure_in_turn(tasks, 20, 2000, 10)) for _ in range(args.rounds)]
        connections, median, longest = map(statistics.median, zip(*rows, strict=True))
        print(f'{tasks:>4} tasks{"":30}{connections:12,.0f}{median:12.1f}{longest:13.1f}',
              flush=True)


def show_resumption(args, origins, root):
    url = origins['https'] + '/small'
    print(f'\n{"a new connection and its request":34}'
          f'{"CPU, µs":>10}{"elapsed, µs":>13}{"resumed":>9}')
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        results = {True: [], False: []}
        for _ in range(args.rounds):
            for is_resumed, rows in results.items():
                rows.append(asyncio.run(measure_new_connections(
                    url, root / 'ca.pem', version, is_resumed, args.connections)))
        for is_resumed, rows in results.items():
            cpu, elapsed, resumed = map(statistics.median, zip(*rows, strict=True))
            name = f'{version.name}, ' + ('resumed' if is_resumed else 'not resumed')
            print(f'{name:34}{cpu:10.0f}{elapsed:13.0f}{resumed:6.0f}/{args.connections}',
                  flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--requests', type=int, default=10_000, help='of one measurement')
    parser.add_argument('--connections', type=int, default=300, help='of one measurement')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        pin(0)
        with nginx(Path(directory), 1024) as origins:
            pin(1)
            show_at_once(args, origins)
            show_in_turn(args)
            show_resumption(args, origins, Path(directory))


if __name__ == '__main__':
    main()
