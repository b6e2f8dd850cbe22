"""What run.py shows: the tables, the budget, and the best peers, of one run or of several.

A run is the facts about it and, in `workloads`, `{workload: {client: [measurement, …]}}`. Of
several runs all measurements count: their medians, and how far apart they are.
"""
import json
import statistics

from clients import CLIENTS
from measure import WORKLOADS
from server import CPUS

WITHOUT_TURNS = 'lowhaio-without-turns'
REQUESTS = ('small', 'small-fields', 'small-32', 'small-512', 'name', '64k', 'post', 'events',
            'connect')
TLS = ('tls', 'tls-32', 'tls-512', 'tls-connect')
CHUNKS = ('upload-1k', 'tls-upload-1k')
BULK = ('download', 'upload', 'tls-download', 'tls-upload')

# The figures of a measurement that are shown: their keys, and the factor to the shown unit.
TABLES = (
    ('CPU of a request, µs', [(name, name, 'cpu', 1e6) for name in REQUESTS]),
    ('CPU of a request over TLS, µs', [(name, name, 'cpu', 1e6) for name in TLS]),
    ('CPU of a chunk of 1 KiB of an upload, µs', [(name, name, 'cpu', 1e6) for name in CHUNKS]),
    ('1,000 requests a second: ms from when each was due, how late another task ran, and CPU of a '
     'request, µs',
     [*((key, 'latency', key, 1e3) for key in
        ('p50', 'p99', 'p99.9', 'lag-p50', 'lag-p99', 'lag-p99.9')),
      ('CPU', 'latency', 'cpu', 1e6)]),
    ('MB per CPU second', [(name, name, 'speed', 1e-6) for name in BULK]),
    ('Peak memory of the process, MiB', [(name, name, 'peak', 2 ** -20) for name in BULK]),
    ('Memory by tracemalloc of a request in flight and of an idle connection; resident memory of '
     'one, KiB',
     [('in flight', 'memory', 'flight', 2 ** -10), ('idle', 'memory', 'idle', 2 ** -10),
      ('idle, resident', 'idle', 'idle', 2 ** -10)]),
    ('Longest wait of another task, ms; import, ms of CPU',
     [('wait', 'wait', 'wait', 1e3), ('wait (CPU)', 'wait', 'held', 1e3),
      ('import', 'import', 'import', 1e3), ('modules', 'import', 'modules', 1)]),
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
    ('latency p99, to aiohttp', ('latency', 'p99'), ('aiohttp', 'latency', 'p99'), '≤', 0.6),
    ('a request in flight, KiB', ('memory', 'flight'), 2 ** 10, '≤', 3.5),
    ('an idle connection, KiB', ('memory', 'idle'), 2 ** 10, '≤', 3.5),
    ('import, ms', ('import', 'import'), 1e-3, '≤', 5),
)
# What several runs have to have in common.
COMMON = ('machine', 'python', 'openssl', 'loop', 'nginx', 'size', 'clients')


# Runs
# ----

def load(paths):
    """The runs of these files, each of which has one run, or those that were merged before."""
    runs = []
    for path in paths:
        content = json.loads(path.read_text())
        runs += content.get('runs', [content])
    for key in COMMON:
        found = {json.dumps(run[key]) for run in runs}
        if len(found) > 1:
            raise SystemExit(f'The runs differ in their {key}: {", ".join(sorted(found))}')
    return sorted(runs, key=lambda run: run['date'])


def merged(runs):
    """All measurements of all runs, in the form of those of one run."""
    results = {}
    for run in runs:
        for name, clients in run['workloads'].items():
            for client, measurements in clients.items():
                results.setdefault(name, {}).setdefault(client, []).extend(measurements)
    # In the order of the tables, as a run may have measured only some.
    return {name: {client: results[name][client] for client in CLIENTS if client in results[name]}
            for name in WORKLOADS if name in results}


def figures(results, client, name, key):
    measurements = results.get(name, {}).get(client, [])
    return [found[key] for found in measurements if found.get(key) is not None]


def median(results, client, name, key):
    """The median of a figure, or None if it was not measured or failed in any round."""
    found = figures(results, client, name, key)
    is_whole = len(found) == len(results.get(name, {}).get(client, []))
    return statistics.median(found) if found and is_whole else None


def spread(results, client, name, key):
    """How far the highest and the lowest are apart, to the median."""
    found = figures(results, client, name, key)
    return (max(found) - min(found)) / statistics.median(found)


# Tables
# ------

def about_lines(runs):
    run = runs[0]
    clients = ', '.join(f'{client} {version}'.strip() for client, version
                        in run['clients'].items())
    dates = ', '.join(run['date'] for run in runs)
    rounds = ' + '.join(str(run['rounds']) for run in runs)
    yield f'{dates}; {run["machine"]}, {run["kernel"]}'
    yield (f'{run["python"]}; {run["openssl"]}; {run["loop"]}; nginx {run["nginx"]}; medians of '
           f'{rounds}; bulk of {run["size"]:,} bytes')
    yield clients


def print_about(runs):
    print(*about_lines(runs), sep='\n', end='\n\n')
    if len(CPUS) < 2:
        print('There is one core only: nginx and the clients share it\n')


def tables(results, is_merged):
    """Each table as its title, the names of its columns, and `{client: [cell, …]}`."""
    for title, columns in TABLES:
        columns = [column for column in columns if column[1] in results]
        clients = {client: None for _, name, *_ in columns for client in results[name]}
        if not columns:
            continue
        names = [name for name, *_ in columns]
        yield title, names, {client: [cell(results, client, *column[1:]) for column in columns]
                             for client in clients}
        if is_merged:
            yield f'{title}: spread', names, {
                client: [spread_cell(results, client, *column[1:-1]) for column in columns]
                for client in clients}


def print_tables(results, is_merged):
    for title, names, rows in tables(results, is_merged):
        print(f'{title}\n{"":22}' + ''.join(f'{name:>15}' for name in names))
        for client, cells in rows.items():
            print(f'{client:22}' + ''.join(f'{cell:>15}' for cell in cells))
        print()


def write_tables(path, runs, results):
    """As Markdown, for pages."""
    lines = ['  \n'.join(about_lines(runs)), '']
    for title, names, rows in tables(results, is_merged=len(runs) > 1):
        lines += [f'### {title}', '', row('', names), f'|{" --- |" * (len(names) + 1)}',
                  *(row(client, cells) for client, cells in rows.items()), '']
    path.write_text('\n'.join(lines))


def row(first, cells):
    return f'| {" | ".join((first, *cells))} |'


def cell(results, client, name, key, factor):
    if any('failed' in found for found in results[name].get(client, ())):
        return 'failed'
    figure = median(results, client, name, key)
    if figure is None:
        return ''
    figure *= factor
    if figure >= 1000 or figure == round(figure):
        return f'{figure:,.0f}'
    return f'{figure:,.1f}' if figure >= 10 else f'{figure:,.2f}'


def spread_cell(results, client, name, key):
    is_measured = median(results, client, name, key) is not None
    return f'{spread(results, client, name, key):.0%}' if is_measured else ''


# The budget
# ----------

def print_budget(runs, results):
    title = 'Budget of lowhaio'
    for what, (name, key), base, sign, bound in BUDGET:
        ratio = ratio_of(results, name, key, base)
        if ratio is None:
            continue
        if title:
            runs_title = '   of each run' if len(runs) > 1 else ''
            print(f'{title:32}{"":>8}{"":>10}{"spread":>10}{"":>10}{runs_title}')
            title = ''
        is_kept = ratio <= bound if sign == '≤' else ratio >= bound
        of_runs = (ratio_of(run['workloads'], name, key, base) for run in runs)
        print(f'{what:32}{ratio:>8.2f}   {sign} {bound:<6}'
              f'{spread(results, "lowhaio", name, key):>8.0%}   '
              f'{"kept" if is_kept else "MISSED":<10}' + '  '.join(
                  f'{found:.2f}' for found in of_runs if found is not None and len(runs) > 1))
    if not title:
        print()


def ratio_of(results, name, key, base):
    figure = median(results, 'lowhaio', name, key)
    divisor = median(results, *base) if isinstance(base, tuple) else base
    return None if figure is None or divisor is None else figure / divisor


def print_best_peers(results):
    """For each workload, how many times as much the best peer uses."""
    print('The best peer, to lowhaio: more CPU a request (> 1), or fewer bytes a CPU second (< 1)')
    for name in (*REQUESTS, *TLS, *CHUNKS, *BULK):
        key = 'speed' if name in BULK else 'cpu'
        own = median(results, 'lowhaio', name, key)
        peers = {client: figure for client in results.get(name, ())
                 if not client.startswith(('floor', 'lowhaio'))
                 and (figure := median(results, client, name, key)) is not None}
        if own is not None and peers:
            best = (max if name in BULK else min)(peers, key=peers.get)
            ratio = peers[best] / own
            is_ahead = ratio < 1 if name in BULK else ratio > 1
            print(f'{name:22}{best:14}{ratio:>8.2f}{"" if is_ahead else "   AHEAD of lowhaio"}')
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
