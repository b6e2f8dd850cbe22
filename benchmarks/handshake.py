"""Measures what a new TLS connection with one request costs, beside the `ssl` module by itself.

    python benchmarks/handshake.py
    python benchmarks/handshake.py --instructions
    python benchmarks/handshake.py --parts

The first prints the CPU time of the client, which are medians of processes that take turns. With
`--instructions`, valgrind's cachegrind counts the instructions that the client executes in user
space instead. The figure is that of two processes that differ only in how many connections they
make: so neither imports nor the first connection are in it. `--parts` shows, by callgrind, which
libraries these instructions are in, and how many are in some functions of OpenSSL. A part may be
within another one: the key exchange is in the handshake, and keys are decoded in copies as well.

The floors are loops that block, and use nothing but the `ssl` module:

floor           resumes the session of the connection before, as browsers do
floor-one       resumes the session of the first connection again and again
floor-new       resumes nothing

The server is the nginx of server.py. It tells which key exchange each connection had, and whether
it resumed a session. This needs what run.py needs, whose environment it uses, and valgrind unless
it takes times.
"""
import argparse
import asyncio
import contextlib
import json
import os
import platform
import re
import shutil
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

from clients import CLIENTS, connect, exchange_blocking, request_message
from environment import install, use_environment
from run import listed
from server import SMALL, nginx, nginx_version, pin
from setting import Setup

HERE = Path(__file__).resolve().parent
FLOORS = ('floor', 'floor-one', 'floor-new')
NAMES = (*FLOORS, 'lowhaio', 'pyreqwest', 'pyqwest', 'wreq', 'curl_cffi', 'aiohttp')
WARM_UP = 5
# The connections of the two processes.
FEWER, MORE = 20, 120

# Functions of OpenSSL's interface, with all that they call. Of functions that are joined
# by a bar, one calls the other: the first that was called counts.
PARTS = {
    'copies of sessions': ('d2i_SSL_SESSION', 'i2d_SSL_SESSION'),
    'handshakes': ('SSL_do_handshake',),
    'key exchange': ('EVP_PKEY_generate', 'EVP_PKEY_decapsulate|EVP_PKEY_derive'),
    'key schedule': ('EVP_KDF_derive',),
    'check of the certificates': ('X509_verify_cert',),
    'decoding of public keys': ('OSSL_DECODER_CTX_new_for_pkey', 'OSSL_DECODER_from_data'),
    'fetching of algorithms': tuple(f'EVP_{what}_fetch' for what in (
        'CIPHER', 'KDF', 'KEM', 'KEYEXCH', 'KEYMGMT', 'MAC', 'MD', 'SIGNATURE')),
}


# Clients
# -------

@contextlib.asynccontextmanager
async def floor(setup, name):
    session = None

    async def get(url):
        nonlocal session
        with connect(setup, url, session) as sock:
            _, content = exchange_blocking(sock, request_message('GET', url))
            if name == 'floor' or (name == 'floor-one' and session is None):
                session = sock.session
        return content

    yield SimpleNamespace(get=get)


async def repeat(name, number, url, ca):
    """Make so many connections, one after the other. Returns the CPU seconds of each."""
    setup = Setup(ca, ('127.0.0.1', 53), 1, is_closing=True)
    async with floor(setup, name) if name in FLOORS else CLIENTS[name][0](setup) as client:
        for _ in range(WARM_UP):
            await client.get(url)
        start = time.process_time()
        for _ in range(number):
            assert await client.get(url) == SMALL
        return (time.process_time() - start) / number


# Measuring
# ---------

class Server:
    def __init__(self, root, origin):
        self.url = origin + '/tls'
        self.ca = root / 'ca.pem'
        self.log = root / 'tls.log'

    def run(self, name, number, wrapper=()):
        """The process of a client, after its end, and what the server says of the connections."""
        self.log.write_bytes(b'')
        process = subprocess.run(
            (*wrapper, sys.executable, __file__, '--repeat', name, str(number), self.url, self.ca),
            check=False, capture_output=True, text=True,
            env={**os.environ, 'PYTHONHASHSEED': '0', 'PYTHONPATH': str(HERE.parent)})
        if process.returncode:
            lines = [line for line in process.stderr.splitlines() if not line.startswith('==')]
            raise SystemExit(f'{name} failed: {lines[-1] if lines else process.returncode}')
        # The server writes a line after the response.
        deadline = time.monotonic() + 10
        while len(lines := self.log.read_text().splitlines()) < number + WARM_UP:
            if time.monotonic() > deadline:
                raise SystemExit(f'{name}: {len(lines)} connections, not {number + WARM_UP}')
            time.sleep(0.01)
        # The first may be of another kind.
        (kind, _), = Counter(lines).most_common(1)
        return process, kind


def times(server, args):
    """For each client, the median of the CPU time in µs, and the kind of its connections."""
    found = {name: [] for name in args.clients}
    for _ in range(args.rounds):
        for name, figures in found.items():
            process, kind = server.run(name, args.connections)
            figures.append((json.loads(process.stdout) * 1e6, kind))
    return {name: (statistics.median(figure for figure, _ in figures), figures[0][1])
            for name, figures in found.items()}


def instructions(server, args):
    """For each client, the instructions of a connection, and the kind of its connections."""
    return {name: count(server, name) for name in args.clients}


def count(server, name):
    counts = []
    for number in (FEWER, MORE):
        process, kind = server.run(name, number, (
            'valgrind', '--tool=cachegrind', '--cache-sim=no',
            '--cachegrind-out-file=/dev/null'))
        refs = re.search(r'I +refs: +([\d,]+)', process.stderr)[1]
        counts.append(int(refs.replace(',', '')))
    return (counts[1] - counts[0]) / (MORE - FEWER), kind


def parts(server, root, name):
    """The instructions of a connection, in each library, and in each function and its callees."""
    profiles = []
    for number in (FEWER, MORE):
        path = root / f'callgrind.{number}'
        server.run(name, number, (
            'valgrind', '--tool=callgrind', '--compress-strings=no', '--compress-pos=no',
            f'--callgrind-out-file={path}'))
        profiles.append(read_profile(path.read_text().splitlines()))
    return [{key: (more[key] - fewer[key]) / (MORE - FEWER) for key in more}
            for fewer, more in zip(*profiles, strict=True)]


def read_profile(lines):
    libraries, functions = Counter(), Counter()
    library = called = None
    for line in lines:
        key, is_pair, value = line.partition('=')
        if key == 'ob':
            library = Path(value).name
        elif key == 'cfn':
            called = value
        elif not is_pair and line[:1].isdigit():
            # After a call, what was called has executed these, and it has a line of its own.
            if called is None:
                libraries[library] += int(line.split()[1])
            else:
                functions[called] += int(line.split()[1])
            called = None
    return libraries, functions


# What is shown
# -------------

def print_table(found, unit):
    base = found.get('floor', (None,))[0]
    print(f'{"":12}{unit:>14}{"to floor":>10}   {"version, key exchange":24}session')
    for name, (figure, kind) in found.items():
        version, group, mark = kind.split()
        ratio = '' if base is None else f'{figure / base:.2f}'
        print(f'{name:12}{figure:14,.0f}{ratio:>10}   {version + ", " + group:24}'
              f'{"resumed" if mark == "r" else "new"}')


def print_parts(name, libraries, functions):
    whole = sum(libraries.values())
    print(f'{name}: {whole:,.0f} instructions')
    for library, figure in sorted(libraries.items(), key=lambda item: -item[1])[:5]:
        print(f'    {library:36}{figure:12,.0f}{figure / whole:8.1%}')
    for part, names in PARTS.items():
        figure = sum(next(filter(None, map(functions.get, name.split('|'))), 0) for name in names)
        if figure >= 1:
            print(f'    {part:36}{figure:12,.0f}{figure / whole:8.1%}')


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--clients', type=listed(NAMES, 'client'), default=list(NAMES),
                        metavar='CLIENT,…', help=', '.join(NAMES))
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--connections', type=int, default=300, help='of one measurement')
    parser.add_argument('--instructions', action='store_true')
    parser.add_argument('--parts', action='store_true')
    parser.add_argument('--cache', type=Path, default=HERE / '.cache',
                        help='for the virtual environment: beside this file')
    parser.add_argument('--repeat', nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    args = parse_args()
    if args.repeat:
        name, number, url, ca = args.repeat
        print(json.dumps(asyncio.run(repeat(name, int(number), url, ca))), flush=True)
        # As in measure.py: some clients crash when they are unloaded.
        os._exit(0)
    use_environment(args.cache.resolve())
    if (args.instructions or args.parts) and not shutil.which('valgrind'):
        raise SystemExit('valgrind is needed')
    failures = install(argparse.Namespace(
        clients=[name for name in args.clients if name not in FLOORS], cache=args.cache,
        loop='asyncio', installed=False, upgrade=False))
    for name, reason in failures.items():
        print(f'{name} is left out: {reason}', file=sys.stderr)
        args.clients.remove(name)
    print(f'CPython {platform.python_version()}, {ssl.OPENSSL_VERSION}, nginx {nginx_version()}')
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        pin(0)
        with nginx(root, 1024) as origins:
            pin(1)
            server = Server(root, origins['https'])
            if args.parts:
                for name in args.clients:
                    print_parts(name, *parts(server, root, name))
            elif args.instructions:
                print_table(instructions(server, args), 'instructions')
            else:
                print_table(times(server, args), 'µs of CPU')


if __name__ == '__main__':
    main()
