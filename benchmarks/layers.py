"""Measures what layers cost that have nothing to do, around a GET of 100 bytes.

    python benchmarks/layers.py
    python benchmarks/layers.py --instructions

What is printed first is the GET without layers, and then what each layer adds to it, and what a
stack of them adds. "field" is no layer: it is what the first header field of a request costs, and
decompressed, cookies, basic and bearer add one. The exchanges, and the server in the same process,
are those of guard.py.

Times are µs of CPU, system calls included. All exchanges take turns in one process, for a few
requests each, and the medians of these rounds count. With `--instructions`, cachegrind counts the
instructions in user space instead, which are the same on any machine.
"""
import argparse
import asyncio
import gc
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

from guard import EXCHANGES, Server

from lowhaio import Pool

GUARD = Path(__file__).with_name('guard.py')
NAMES = [name for name in EXCHANGES if name not in (
    'post', 'upload', 'chunked', 'connect')]
# What is made in a round, and before the first one.
NUMBER = 100
WARM_UP = 500


async def times(rounds):
    """The µs of CPU of a request, for each exchange."""
    server = Server()
    pools = [Pool(get_connection=server.get_connection) for _ in NAMES]
    requests = {name: EXCHANGES[name][0](request)
                for name, (request, _) in zip(NAMES, pools, strict=True)}
    found = {name: [] for name in NAMES}
    for name in NAMES:
        await microseconds(name, requests[name], WARM_UP)
    # Otherwise the collector would look at all that was imported in the middle of a round.
    gc.collect()
    gc.freeze()
    for _ in range(rounds):
        for name in NAMES:
            found[name].append(await microseconds(name, requests[name], NUMBER))
    for _, close in pools:
        await close()
    server.close()
    return {name: statistics.median(figures) for name, figures in found.items()}


async def microseconds(name, request, number):
    _, call, path, length = EXCHANGES[name]
    start = time.thread_time()
    for _ in range(number):
        assert await call(request, path) == length
    return (time.thread_time() - start) / number * 1e6


def counted(name, number):
    printed = subprocess.run(
        ['valgrind', '--tool=cachegrind', '--cache-sim=no', '--cachegrind-out-file=/dev/null',
         sys.executable, GUARD, '--repeat', name, str(number)], check=True, text=True,
        capture_output=True, env={**os.environ, 'PYTHONHASHSEED': '0'}).stderr
    return int(re.search(r'I\s+refs:\s+([\d,]+)', printed)[1].replace(',', ''))


def instructions():
    """Those of a request, without what is done once."""
    # Modules that have changed are compiled here, which would be counted otherwise.
    counted('session', 1)
    return {name: (counted(name, 600) - counted(name, 100)) / 500 for name in NAMES}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=101)
    parser.add_argument('--instructions', action='store_true')
    args = parser.parse_args()
    figures = instructions() if args.instructions else asyncio.run(times(args.rounds))
    print(f'{platform.python_implementation()} {platform.python_version()}, {platform.machine()}')
    bare = figures.pop('get')
    print(f'{"get":14}' + (f'{bare:10,.0f} instructions' if args.instructions
                           else f'{bare:10.1f} µs'))
    for name, figure in figures.items():
        print(f'{name:14}' + (f'{figure - bare:+10,.0f}' if args.instructions
                              else f'{figure - bare:+10.1f}'))


if __name__ == '__main__':
    main()
