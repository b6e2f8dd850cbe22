"""Measures lowhaio, its floor and its peers, side by side in one run.

    python benchmarks/run.py
    python benchmarks/run.py --quick
    python benchmarks/run.py --rounds 3 --only small,small-32 --clients floor,lowhaio,aiohttp

It makes a virtual environment for the peers, starts an nginx with plain and TLS listeners on one
core, and runs the clients on another. Each measurement is a fresh process, which opens connections
and warms up. Then the CPU time of the process, with all threads, is taken around the requests. The
clients take turns, round by round, and medians are shown. Only numbers of one run are comparable.

The floor is the least that any asyncio program could use. For small requests that is
`loop.add_reader` once for each connection, and then `send`, a future and `recv`, with nothing
parsed. For bulk it is a blocking loop of `recv_into` or `sendall`.

It prints tables, and writes results.json, requests.svg and bulk.svg. It needs Python 3.11 or newer
on Linux, nginx with its DAV module (Debian: nginx-light), and a package index for the first run. A
client that cannot be installed, or fails in a workload, is shown as failed. The exit code is 1 if
that is lowhaio or the floor.
"""
import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import venv
from datetime import UTC, datetime
from pathlib import Path

from clients import CLIENTS
from measure import WORKLOADS
from server import CPUS, nginx_version, pin, servers

HERE = Path(__file__).resolve().parent
OLD = 'lowhaio-0.0.89'
WITHOUT_TURNS = 'lowhaio-without-turns'
# These clients are measured with a quarter of the requests, which tells as much.
SLOW = ('httpx', 'httpcore', 'niquests', 'curl_cffi')
# What the kernel does in a bulk transfer on loopback changes from one transfer to the next. So
# these clients, which the budget compares, are measured three times as often.
COMPARED = ('floor', 'lowhaio', WITHOUT_TURNS)
NEEDED = ('aiodnsresolver', 'matplotlib', 'trustme', 'uvloop')
QUICK_SIZE = 64 * 1024 ** 2

REQUESTS = ('small', 'small-32', 'small-512', 'name', '64k', 'post', 'events', 'connect')
TLS = ('tls', 'tls-32', 'tls-512', 'tls-connect')
BULK = ('download', 'upload', 'tls-download', 'tls-upload')

# The figures of a measurement that are shown: their keys, and the factor to the shown unit.
TABLES = (
    ('CPU of a request, µs', [(name, name, 'cpu', 1e6) for name in REQUESTS]),
    ('CPU of a request over TLS, µs', [(name, name, 'cpu', 1e6) for name in TLS]),
    ('MB per CPU second', [(name, name, 'speed', 1e-6) for name in BULK]),
    ('Peak memory of the process, MiB', [(name, name, 'peak', 2 ** -20) for name in BULK]),
    ('Longest wait of another task, ms; memory of an idle connection, KiB; import, ms of CPU',
     [('wait', 'wait', 'wait', 1e3), ('wait (CPU)', 'wait', 'held', 1e3),
      ('idle', 'idle', 'idle', 2 ** -10), ('import', 'import', 'import', 1e3),
      ('modules', 'import', 'modules', 1)]),
)

# The budget of lowhaio: what is compared, the figure, what it is divided by, and the bound.
BUDGET = (
    *((f'{name}, to the floor', (name, 'cpu'), ('floor', name, 'cpu'), '≤', bound)
      for name, bound in (('small', 1.4), ('small-32', 2.2), ('tls', 1.6))),
    *((f'{name}, to the floor', (name, 'speed'), ('floor', name, 'speed'), '≥', bound)
      for name, bound in (('download', 0.85), ('tls-download', 0.6), ('upload', 0.85))),
    ('name, to small', ('name', 'cpu'), ('lowhaio', 'small', 'cpu'), '≤', 1.03),
    ('small-512, to small-32', ('small-512', 'cpu'), ('lowhaio', 'small-32', 'cpu'), '≤', 1.15),
    ('wait, ms', ('wait', 'wait'), 1e-3, '≤', 5),
    ('download, to one without turns', ('download', 'speed'),
     (WITHOUT_TURNS, 'download', 'speed'), '≥', 0.97),
    ('import, ms', ('import', 'import'), 1e-3, '≤', 5),
)


# The environment
# ---------------

def use_environment(cache):
    """Start again in the virtual environment, which is made first if it is not there."""
    directory = cache / f'python{platform.python_version()}'
    if Path(sys.prefix).resolve() == directory.resolve():
        return
    python = directory / 'bin/python'
    if not python.exists():
        print(f'Making {directory}', file=sys.stderr)
        venv.create(directory, with_pip=True, symlinks=True)
    os.execv(python, (python, *sys.argv))


def install(clients, cache):
    """Install what is not there yet. Returns the clients that cannot be installed, and why."""
    for name in NEEDED:
        reason = pip_install(name)
        if reason:
            raise SystemExit(f'{name} can not be installed: {reason}')
    failures = {}
    for client in clients:
        if client == OLD:
            directory = cache / OLD
            reason = '' if directory.exists() else pip(
                '--target', directory, OLD.replace('-', '=='))
            if reason:
                shutil.rmtree(directory, ignore_errors=True)
        elif client in ('floor', 'lowhaio', WITHOUT_TURNS):
            continue
        else:
            reason = pip_install(client)
        if reason:
            failures[client] = f'not installed: {reason}'
    return failures


def pip_install(name):
    try:
        importlib.metadata.version(name)
        return ''
    except importlib.metadata.PackageNotFoundError:
        return pip(name)


def pip(*args):
    """Run pip. Returns the reason if it failed, and otherwise an empty string."""
    print('Installing', *args, file=sys.stderr)
    result = subprocess.run(
        (sys.executable, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', *args),
        check=False, stderr=subprocess.PIPE, text=True)
    return last_line(result.stderr) if result.returncode else ''


def last_line(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else 'nothing was said'


# Measuring
# ---------

def is_measured(client, workload):
    """Whether this workload is measured for this client.

    The floor has nothing to import, and it blocks where a wait would be measured.
    """
    return (client != 'floor' or workload not in ('wait', 'import')) and (
        client != WITHOUT_TURNS or workload in ('download', 'wait'))


def measure(args, client, name, origins, root):
    workload = WORKLOADS[name]
    requests = args.requests if args.requests and workload.requests > 1 else \
        workload.quick if args.quick else workload.requests
    if client in SLOW and not args.quick:
        requests //= 4
    job = {
        'client': client, 'workload': name, 'origins': origins, 'ca': str(root / 'ca.pem'),
        'requests': max(1, requests // workload.concurrency) * workload.concurrency,
        'size': args.size, 'uvloop': args.uvloop,
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


def about(args):
    """The time, the machine and the versions of a run."""
    return {
        'date': datetime.now(UTC).strftime('%Y-%m-%d %H:%M UTC'),
        'machine': f'{cpu_model()}, {os.cpu_count()} CPUs, {platform.platform()}',
        'python': f'{platform.python_implementation()} {platform.python_version()}, '
                  f'{ssl.OPENSSL_VERSION}',
        'loop': f'uvloop {importlib.metadata.version("uvloop")}' if args.uvloop else 'asyncio',
        'nginx': nginx_version(),
        'rounds': args.rounds,
        'size': args.size,
        'clients': {client: version(client) for client in args.clients},
    }


def cpu_model():
    for line in Path('/proc/cpuinfo').read_text().splitlines():
        if line.startswith('model name'):
            return line.partition(':')[2].strip()
    return platform.machine()


def version(client):
    if client == OLD:
        return '0.0.89'
    if client.startswith('lowhaio'):
        process = subprocess.run(
            ('git', '-C', HERE, 'describe', '--always', '--dirty'), check=False,
            capture_output=True, text=True)
        return process.stdout.strip() or 'this checkout'
    try:
        return importlib.metadata.version(client)
    except importlib.metadata.PackageNotFoundError:
        return ''


# What is shown
# -------------

def figures(results, client, name, key):
    measurements = results.get(name, {}).get(client, [])
    return [found[key] for found in measurements if found.get(key) is not None]


def median(results, client, name, key):
    """The median of a figure, or None if it was not measured or failed in any round."""
    found = figures(results, client, name, key)
    is_whole = len(found) == len(results.get(name, {}).get(client, []))
    return statistics.median(found) if found and is_whole else None


def print_about(facts):
    clients = ', '.join(f'{client} {version}'.strip() for client, version
                        in facts['clients'].items())
    print(f'{facts["date"]}; {facts["machine"]}\n{facts["python"]}; {facts["loop"]}; nginx '
          f'{facts["nginx"]}; medians of {facts["rounds"]}; bulk of {facts["size"]:,} bytes\n'
          f'{clients}\n')
    if len(CPUS) < 2:
        print('There is one core only: nginx and the clients share it\n')


def print_tables(results):
    for title, columns in TABLES:
        columns = [column for column in columns if column[1] in results]
        rows = {client: None for _, name, *_ in columns for client in results[name]}
        if columns:
            print(f'{title}\n{"":22}' + ''.join(f'{column[0]:>13}' for column in columns))
        for client in rows:
            print(f'{client:22}' + ''.join(
                f'{cell(results, client, *column[1:]):>13}' for column in columns))
        if columns:
            print()


def cell(results, client, name, key, factor):
    if any('failed' in found for found in results[name].get(client, ())):
        return 'failed'
    figure = median(results, client, name, key)
    if figure is None:
        return ''
    figure *= factor
    return f'{figure:,.0f}' if figure >= 1000 or figure == round(figure) else f'{figure:,.1f}'


def print_budget(results):
    title = 'Budget of lowhaio'
    for what, (name, key), base, sign, bound in BUDGET:
        ratio = ratio_of(results, name, key, base)
        if ratio is None:
            continue
        if title:
            print(f'{title:32}{"":>8}{"":>10}{"spread":>10}')
            title = ''
        found = figures(results, 'lowhaio', name, key)
        spread = (max(found) - min(found)) / statistics.median(found)
        is_kept = ratio <= bound if sign == '≤' else ratio >= bound
        print(f'{what:32}{ratio:>8.2f}   {sign} {bound:<6}{spread:>8.0%}   '
              f'{"kept" if is_kept else "MISSED"}')
    if not title:
        print()


def ratio_of(results, name, key, base):
    figure = median(results, 'lowhaio', name, key)
    divisor = median(results, *base) if isinstance(base, tuple) else base
    return None if figure is None or divisor is None else figure / divisor


def print_best_peers(results):
    """For each workload, how many times as much the best peer uses."""
    print('The best peer, to lowhaio: more CPU a request (> 1), or fewer bytes a CPU second (< 1)')
    for name in (*REQUESTS, *TLS, *BULK):
        key = 'speed' if name in BULK else 'cpu'
        own = median(results, 'lowhaio', name, key)
        peers = {client: figure for client in results.get(name, ())
                 if not client.startswith(('floor', 'lowhaio'))
                 and (figure := median(results, client, name, key)) is not None}
        if own is not None and peers:
            best = (max if name in BULK else min)(peers, key=peers.get)
            ratio = peers[best] / own
            is_ahead = ratio < 1 if name in BULK else ratio > 1
            print(f'{name:22}{best:12}{ratio:>8.2f}{"" if is_ahead else "   AHEAD of lowhaio"}')
    print()


def failed(results):
    """The failures, as `{(client, reason): [workload]}`."""
    reasons = {}
    for name, clients in results.items():
        for client, measurements in clients.items():
            for reason in {found['failed'] for found in measurements if 'failed' in found}:
                reasons.setdefault((client, reason), []).append(name)
    return reasons


def print_failures(results):
    for (client, reason), names in failed(results).items():
        print(f'{client} failed in {", ".join(names)}: {reason}')


# Plots
# -----

def draw(facts, results, directory):
    import matplotlib as mpl
    mpl.use('svg')
    mpl.rcParams.update({'svg.hashsalt': 'lowhaio', 'svg.fonttype': 'none'})
    footer = f'{facts["date"]}, {facts["python"].partition(",")[0]}, {facts["loop"]}, nginx ' \
             f'{facts["nginx"]}\n{facts["machine"]}'
    draw_bars(results, ('small', 'small-32', 'tls', 'tls-32', 'connect'), 'cpu', 1e6,
              'CPU of a request, µs: less is better', footer, directory / 'requests.svg')
    draw_bars(results, BULK, 'speed', 1e-6, 'MB per CPU second: more is better', footer,
              directory / 'bulk.svg')


def draw_bars(results, names, key, factor, title, footer, path):
    from matplotlib.figure import Figure
    names = [name for name in names if name in results]
    if not names:
        return
    figure = Figure(figsize=(3 * len(names), 3.6), layout='constrained')
    figure.suptitle(title)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        clients = [client for client in results[name] if client != WITHOUT_TURNS
                   and median(results, client, name, key) is not None]
        values = [median(results, client, name, key) * factor for client in clients]
        colors = ['#999999' if client == 'floor' else '#d62728' if client == 'lowhaio' else
                  '#9ecae1' for client in clients]
        # A longer bar would leave no room to tell the others apart.
        longest = min(max(values), 5 * statistics.median(values))
        bars = axes.barh(clients, [min(value, longest) for value in values], color=colors)
        axes.bar_label(bars, [f'{value:,.0f}' + (' (cut short)' if value > longest else '')
                              for value in values], padding=2, fontsize=7)
        axes.set_title(name, fontsize=9)
        axes.invert_yaxis()
        axes.margins(x=0.35)
        axes.set_xticks([])
        axes.tick_params(axis='y', labelsize=7)
        axes.spines[['top', 'right', 'bottom']].set_visible(False)
    figure.supxlabel(footer, fontsize=6)
    figure.savefig(path, metadata={'Date': None})


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
    parser.add_argument('--uvloop', action='store_true', help='in place of asyncio')
    parser.add_argument('--timeout', type=float,
                        help='seconds for one measurement: 600, or 20 if quick')
    parser.add_argument('--cache', type=Path, default=HERE / '.cache',
                        help='for the virtual environment: beside this file')
    parser.add_argument('--output', type=Path, default=HERE / 'results',
                        help='directory for what is written: results, beside this file')
    args = parser.parse_args()
    args.only = args.only or [name for name, workload in WORKLOADS.items()
                              if not args.quick or workload.concurrency < 512]
    args.rounds = args.rounds or (1 if args.quick else 5)
    args.timeout = args.timeout or (20 if args.quick else 600)
    args.size = args.size or (QUICK_SIZE if args.quick else 1024 ** 3)
    args.cache = args.cache.resolve()
    if 'lowhaio' in args.clients:
        args.clients.append(WITHOUT_TURNS)
    return args


def main():
    args = parse_args()
    use_environment(args.cache)
    # Otherwise nginx would be left running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    failures = install(args.clients, args.cache)
    facts = about(args)
    print_about(facts)
    args.output.mkdir(parents=True, exist_ok=True)
    results = measure_all(args, failures, facts)
    print_tables(results)
    print_budget(results)
    print_best_peers(results)
    print_failures(results)

    draw(facts, results, args.output)
    print(f'Written to {args.output}')
    if any(client in ('floor', 'lowhaio') for client, _ in failed(results)):
        sys.exit(1)


if __name__ == '__main__':
    main()
