"""The virtual environment of the peers, and what a run says about its machine and versions."""
import functools
import importlib.metadata
import os
import platform
import shutil
import ssl
import subprocess
import sys
import venv
from datetime import UTC, datetime
from pathlib import Path

from clients import CLIENTS
from server import nginx_version

HERE = Path(__file__).resolve().parent
OLD = 'lowhaio-0.0.89'
NEEDED = ('aiodnsresolver', 'trustme')


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


def install(args):
    """Install what is not there yet. Returns the clients that cannot be installed, and why.

    With `--installed`, nothing is installed but lowhaio 0.0.89, which has a directory of its own.
    """
    loop = () if args.loop == 'asyncio' else (args.loop,)
    for name in (*NEEDED, *loop):
        reason = pip_install(args, name)
        if reason:
            raise SystemExit(f'{name} can not be installed: {reason}')
    failures = {}
    for client in args.clients:
        _, _, distributions = CLIENTS[client]
        reasons = [old_install(args)] if client == OLD else \
            [pip_install(args, name) for name in distributions]
        if any(reasons):
            failures[client] = f'not installed: {next(filter(None, reasons))}'
    return failures


def old_install(args):
    directory = args.cache / OLD
    if directory.exists():
        return ''
    reason = pip('--target', directory, OLD.replace('-', '=='))
    if reason:
        shutil.rmtree(directory, ignore_errors=True)
    return reason


def pip_install(args, name):
    if args.upgrade and not args.installed:
        return pip('--upgrade', name)
    try:
        importlib.metadata.version(name)
        return ''
    except importlib.metadata.PackageNotFoundError:
        return f'there is no {name}' if args.installed else pip(name)


@functools.cache
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


# About a run
# -----------

def about(args):
    """The time, the machine and the versions of a run."""
    return {
        'date': datetime.now(UTC).strftime('%Y-%m-%d %H:%M UTC'),
        'machine': f'{cpu_model()}, {os.cpu_count()} CPUs',
        'kernel': f'{platform.system()} {platform.release()}',
        'python': f'{platform.python_implementation()} {platform.python_version()}',
        'openssl': ssl.OPENSSL_VERSION,
        'loop': 'asyncio' if args.loop == 'asyncio' else
                f'{args.loop} {importlib.metadata.version(args.loop)}',
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
    """Of a client that is made of several distributions, the versions of all."""
    if client == 'floor':
        return ''
    if client == OLD:
        return '0.0.89'
    if client.startswith('lowhaio'):
        process = subprocess.run(
            ('git', '-C', HERE, 'describe', '--always', '--dirty'), check=False,
            capture_output=True, text=True)
        return process.stdout.strip() or 'this checkout'
    _, _, distributions = CLIENTS[client]
    found = {name: version_of(name) for name in distributions}
    if len(found) == 1:
        return next(iter(found.values()))
    return f'({", ".join(f"{name} {version}" for name, version in found.items())})'


def version_of(distribution):
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return 'not installed'
