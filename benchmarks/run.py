"""Measures lowhaio, its floor and its peers, side by side in one run.

    python benchmarks/run.py
    python benchmarks/run.py --quick
    python benchmarks/run.py --rounds 3 --only small,small-32 --clients floor,lowhaio,aiohttp
    python benchmarks/run.py --merge first/results.json second/results.json third/results.json

It makes a virtual environment for the peers, with their newest versions, or uses that of the
interpreter with `--installed`. It starts an nginx with plain and TLS listeners on one core, and
runs the clients on another. Each measurement is a fresh process, which opens connections and warms
up. Then the CPU time of the process, with all threads, is taken around the requests. The clients
take turns, round by round, and medians are shown. Only numbers of one run are comparable.

The interpreter, and so its OpenSSL, is the one that this is run with; `--loop` chooses the loop.

The floor is the least that any asyncio program could use. For small requests that is
`loop.add_reader` once for each connection, and then `send`, a future and `recv`, with nothing
parsed. For bulk it is a blocking loop of `recv_into` or `sendall`.

`--merge` measures nothing. It takes the results of several runs, which may be hours apart, and
shows the medians and the spread of all their measurements, and the budget of each run. The file
that it writes has all runs, each with its date.

It prints tables, and writes results.json, tables.md and plots. It needs Python 3.11 or newer on
Linux, nginx with its DAV module (Debian: nginx-light), and a package index for the first run. A
client that cannot be installed, or fails in a workload, is shown as failed. The exit code is 1 if
that is lowhaio or the floor.
"""
import argparse
import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from clients import CLIENTS
from environment import OLD, about, install, last_line, use_environment
from measure import WORKLOADS
from plots import draw
from report import (
    BULK,
    WITHOUT_TURNS,
    failed,
    load,
    merged,
    print_about,
    print_best_peers,
    print_budget,
    print_failures,
    print_tables,
    write_tables,
)
from server import pin, servers

HERE = Path(__file__).resolve().parent
LOOPS = ('asyncio', 'uvloop', 'rloop')
# These clients are measured with a quarter of the requests, which tells as much.
SLOW = ('httpx', 'httpx2', 'httpcore', 'niquests', 'curl_cffi')
# What the kernel does in a bulk transfer on loopback changes from one transfer to the next. So
# these clients, which the budget compares, are measured three times as often.
COMPARED = ('floor', 'lowhaio', WITHOUT_TURNS)
# Of the others, Python does not know the memory.
IN_PYTHON = ('lowhaio', OLD, 'aiohttp', 'httpx2', 'httpx2-aiohttp', 'httpx', 'httpx-aiohttp',
             'httpcore', 'niquests')
# A round of latency takes half a minute for each client, so only some have it.
ON_SCHEDULE = ('floor', 'lowhaio', 'aiohttp', 'httpx2', 'pyreqwest')
MANY_AT_ONCE = ('small-512', 'tls-512')
# What these measure depends on how many requests there are.
ALIKE = ('idle', 'memory', 'latency')
QUICK_SIZE = 64 * 1024 ** 2


# Measuring
# ---------

def is_measured(client, workload):
    """Whether this workload is measured for this client.

    The floor has nothing to import, it blocks where a wait would be measured, and it takes its
    first response to be there at once.
    """
    if client == 'floor':
        return workload not in ('wait', 'import', 'memory')
    if client == WITHOUT_TURNS:
        return workload in ('download', 'wait')
    return client in {'latency': ON_SCHEDULE, 'memory': IN_PYTHON}.get(workload, CLIENTS)


def requests_of(args, client, name):
    workload = WORKLOADS[name]
    requests = workload.quick if args.quick else workload.requests
    if name in ALIKE:
        return requests
    requests = args.requests if args.requests and workload.requests > 1 else requests
    requests //= 4 if client in SLOW and not args.quick else 1
    return max(1, requests // workload.concurrency) * workload.concurrency


def measure(args, client, name, origins, root):
    job = {
        'client': client, 'workload': name, 'origins': origins, 'ca': str(root / 'ca.pem'),
        'requests': requests_of(args, client, name), 'size': args.size, 'loop': args.loop,
        'library': str(args.cache / OLD if client == OLD else HERE.parent),
    }
    try:
        process = subprocess.run(
            (sys.executable, HERE / 'measure.py', json.dumps(job)), check=False,
            capture_output=True, text=True, timeout=args.timeout)
    except subprocess.TimeoutExpired:
        return {'failed': f'it took more than {args.timeout:g} seconds', 'is_hopeless': True}
    finally:
        for file in (root / 'www/upload').iterdir():
            file.unlink()
    if process.returncode < 0:
        return {'failed': f'it was ended by {signal.Signals(-process.returncode).name}'}
    if process.returncode:
        return {'failed': last_line(process.stderr)}
    result = json.loads(process.stdout)
    if name in BULK:
        result['speed'] = args.size / result['cpu']
    return result


def measure_all(args, failures, facts):
    """All results, as `{workload: {client: [a measurement for each round]}}`.

    They are written to the file after each round.
    """
    results = {name: {client: [] for client in args.clients if is_measured(client, name)}
               for name in args.only}
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        pin(0)
        with servers(root, args.size) as origins:
            pin(1)
            for number in range(args.rounds):
                for name, clients in results.items():
                    show_progress(args, number, name)
                    for client in in_turn(name, clients):
                        measurements = clients[client]
                        is_hopeless = measurements and 'is_hopeless' in measurements[-1]
                        measurements.append(
                            {'failed': failures[client]} if client in failures else
                            measurements[-1] if is_hopeless else
                            measure(args, client, name, origins, root))
                (args.output / 'results.json').write_text(
                    json.dumps({**facts, 'workloads': results}, indent=1) + '\n')
    show_progress(args)
    return results


def in_turn(name, clients):
    again = [client for client in clients if client in COMPARED and name in BULK]
    return [*clients, *again, *again]


def show_progress(args, number=0, name=''):
    if sys.stderr.isatty():
        text = f'round {number + 1} of {args.rounds}: {name}' if name else ''
        print(f'\r{text:60}\r', end='', file=sys.stderr, flush=True)


# The command
# -----------

def listed(known, what):
    def parse(text):
        names = text.split(',')
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f'no {what} {name!r}: of {", ".join(known)}')
        return names

    return parse


def parse_args():
    clients = [client for client in CLIENTS if client != WITHOUT_TURNS]
    workloads = '\n'.join(f'  {name:14}{workload.what}' for name, workload in WORKLOADS.items())
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f'workloads:\n{workloads}')
    parser.add_argument('--quick', action='store_true',
                        help='one round of few requests, never 512 at once: shows that it works')
    parser.add_argument('--rounds', type=int, help='5, or 1 if quick')
    parser.add_argument('--only', type=listed(WORKLOADS, 'workload'), metavar='WORKLOAD,…')
    parser.add_argument('--clients', type=listed(CLIENTS, 'client'), default=clients,
                        metavar='CLIENT,…', help=', '.join(clients))
    parser.add_argument('--requests', type=int, help='of one measurement')
    parser.add_argument('--size', type=int, help='bytes of a bulk transfer: 1 GiB, or 64 MiB')
    parser.add_argument('--loop', choices=LOOPS, default='asyncio')
    parser.add_argument('--timeout', type=float,
                        help='seconds for one measurement: 600, or 20 if quick')
    parser.add_argument('--installed', action='store_true',
                        help='measure what this interpreter has, and install no peers')
    parser.add_argument('--upgrade', action='store_true',
                        help='bring an environment that was made before to the newest peers')
    parser.add_argument('--merge', nargs='+', type=Path, metavar='FILE',
                        help='the results of several runs, to be shown together')
    parser.add_argument('--cache', type=Path, default=HERE / '.cache',
                        help='for the virtual environment: beside this file')
    parser.add_argument('--output', type=Path, default=HERE / 'results',
                        help='directory for what is written: results, beside this file')
    args = parser.parse_args()
    args.only = args.only or [name for name in WORKLOADS
                              if not args.quick or name not in MANY_AT_ONCE]
    args.rounds = args.rounds or (1 if args.quick else 5)
    args.timeout = args.timeout or (20 if args.quick else 600)
    args.size = args.size or (QUICK_SIZE if args.quick else 1024 ** 3)
    args.cache = args.cache.resolve()
    if 'lowhaio' in args.clients:
        args.clients.append(WITHOUT_TURNS)
    return args


def show(args, runs, results):
    print_tables(results, is_merged=len(runs) > 1)
    print_budget(runs, results)
    print_best_peers(results)
    print_failures(results)
    write_tables(args.output / 'tables.md', runs, results)
    draw(runs, results, args.output)
    print(f'Written to {args.output}')


def main():
    args = parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    if args.merge:
        runs = load(args.merge)
        (args.output / 'results.json').write_text(json.dumps({'runs': runs}, indent=1) + '\n')
        print_about(runs)
        show(args, runs, merged(runs))
        return
    if not args.installed:
        use_environment(args.cache)
    # Otherwise nginx would be left running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    failures = install(args)
    facts = about(args)
    print_about([facts])
    results = measure_all(args, failures, facts)
    show(args, [{**facts, 'workloads': results}], results)
    if any(client in ('floor', 'lowhaio') for client, _ in failed(results)):
        sys.exit(1)


if __name__ == '__main__':
    main()
