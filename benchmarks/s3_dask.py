"""Measures what a second process brings to the copying of many files, and what Dask costs.

    python benchmarks/s3_dask.py
    python benchmarks/s3_dask.py --rounds 5 --files 20000 --delay 0.05 --only copy

Each measurement is a whole copy by a program of examples/: s3_copy.py, and s3_copy_dask.py with
one worker and with two. They take turns, round by round, and medians are shown. The rate is the
one that they print: from when the workers are up, and with the listing. Each process may have
--concurrency requests at once.

The server answers each request after --delay seconds, as one that is far away does. It holds
nothing, checks nothing and has no limit, so what is measured is the clients. With them it shares
the cores of this machine. When these are busy, a second worker can bring nothing: the share that
was idle is shown, and `cores` is how many the copy has used.

copy      from S3 to S3: a request for each file, without content
download  a file of 16 KiB with each request, to a temporary folder

It exits with 1 if two workers copy less than 1.7 times as many files a second as one.
It needs what `pip install ".[test,outside]"` installs.
"""
import argparse
import asyncio
import contextlib
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
AIM = 1.7
PAGE = 1000
SIZE = 16 * 1024
PROGRAMS = {
    's3_copy.py': ('s3_copy.py',),
    'one worker': ('s3_copy_dask.py', '--workers', '1'),
    'two workers': ('s3_copy_dask.py', '--workers', '2'),
}


# ---------------------------------------------------------------------------- the server

OBJECT = b'HTTP/1.1 200 OK\r\netag: "1"\r\ncontent-length: %d\r\n\r\n' % SIZE + bytes(SIZE)
PART = OBJECT.replace(b'200 OK\r\n', b'206 Partial Content\r\ncontent-range: bytes 0-%d/%d\r\n' % (
    SIZE - 1, SIZE))
LENGTH = re.compile(rb'\r\ncontent-length: ([0-9]+)')
AFTER = re.compile(rb'[?&](?:continuation-token|start-after)=(?:f|f%2F)?([0-9]+)')


def whole(content):
    return b'HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b' % (len(content), content)


COPIED = whole(b'<CopyObjectResult><ETag>"1"</ETag></CopyObjectResult>')


def listing(target, files):
    """A page. The bucket `from` has all files, and others have none."""
    match = AFTER.search(target)
    start = int(match[1]) + 1 if match else 0
    names = range(start, min(start + PAGE, files)) if target.startswith(b'/from') else ()
    more = (f'<NextContinuationToken>{names[-1]}</NextContinuationToken>'
            if names and names[-1] + 1 < files else '')
    entries = ''.join(map(entry, names))
    return whole(f'<ListBucketResult>{more}{entries}</ListBucketResult>'.encode())


def entry(number):
    return (f'<Contents><Key>{number:08}</Key><LastModified>2026-01-01T00:00:00.000Z'
            f'</LastModified><ETag>"1"</ETag><Size>{SIZE}</Size></Contents>')


class Answering(asyncio.Protocol):
    def __init__(self, delay, files):
        self.delay = delay
        self.files = files
        self.rest = b''

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.rest += data
        while True:
            head, end, rest = self.rest.partition(b'\r\n\r\n')
            match = LENGTH.search(head)
            length = int(match[1]) if match else 0
            if not end or len(rest) < length:
                break
            self.rest = rest[length:]
            asyncio.get_running_loop().call_later(
                self.delay, self.transport.write, self.answer(head))

    def answer(self, head):
        method, target = head.split(b' ', 2)[:2]
        if method == b'PUT':
            return COPIED
        if b'list-type=2' in target:
            return listing(target, self.files)
        return PART if b'\r\nrange: ' in head else OBJECT


async def serve(delay, files):
    server = await asyncio.get_running_loop().create_server(
        lambda: Answering(delay, files), '127.0.0.1', 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    # Until whoever has started it closes its standard input.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


@contextlib.contextmanager
def serving(args):
    with subprocess.Popen([sys.executable, __file__, '--serve', '--delay', str(args.delay),
                           '--files', str(args.files)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as process:
        try:
            yield f'http://127.0.0.1:{int(process.stdout.readline())}'
        finally:
            process.stdin.close()


# ---------------------------------------------------------------------------- a measurement

def idle_seconds():
    """Of all cores together, since the start of the machine. Only Linux tells."""
    path = Path('/proc/stat')
    return (int(path.read_text().split()[4]) / os.sysconf('SC_CLK_TCK') if path.exists()
            else float('nan'))


def environment():
    layers = {path.parent for path in ROOT.glob('layers/*/lowhaio_*.py')}
    return {**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, (ROOT, *layers))),
            'AWS_ACCESS_KEY_ID': 'AKID', 'AWS_SECRET_ACCESS_KEY': 'secret'}


def measured(program, target, url, args):
    """Files a second; cores used by the program; the share of the machine that was idle."""
    before, idle, start = resource.getrusage(resource.RUSAGE_CHILDREN), idle_seconds(), time.time()
    ended = subprocess.run(
        [sys.executable, ROOT / 'examples' / program[0], *program[1:], '--endpoint-url', url,
         '--concurrency', str(args.concurrency), 's3://from', target],
        env=environment(), capture_output=True, text=True, check=False)
    seconds = time.time() - start
    if ended.stdout != f'{args.files} copied, 0 skipped, 0 failed\n':
        raise SystemExit(f'{program} failed: {ended.stdout}{ended.stderr[-2000:]}')
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    rate = float(re.search(r'([0-9]+) files/s\n', ended.stderr)[1])
    return rate, used / seconds, (idle_seconds() - idle) / seconds / os.cpu_count()


def measured_to(what, program, url, args):
    if what == 'copy':
        return measured(program, 's3://to', url, args)
    with tempfile.TemporaryDirectory() as folder:
        return measured(program, folder, url, args)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--files', type=int, default=20_000)
    parser.add_argument('--delay', type=float, default=0.02)
    parser.add_argument('--concurrency', type=int, default=8)
    parser.add_argument('--only', choices=('copy', 'download'))
    parser.add_argument('--serve', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        asyncio.run(serve(args.delay, args.files))
        return
    print(f'{args.files} files, an answer after {args.delay * 1000:.0f} ms, {args.concurrency} '
          f'requests at once for each process; {os.cpu_count()} cores\n\n'
          '| | | files/s | cores | idle |\n| --- | --- | --- | --- | --- |')
    missed = False
    with serving(args) as url:
        for what in (args.only,) if args.only else ('copy', 'download'):
            rounds = [{name: measured_to(what, program, url, args)
                       for name, program in PROGRAMS.items()} for _ in range(args.rounds)]
            rates = {}
            for name in PROGRAMS:
                rates[name], cores, idle = (
                    statistics.median(values)
                    for values in zip(*(each[name] for each in rounds), strict=True))
                print(f'| {what} | {name} | {rates[name]:.0f} | {cores:.1f} | {idle:.0%} |')
            ratio = rates['two workers'] / rates['one worker']
            missed |= ratio < AIM
            print(f'| {what} | two to one | {ratio:.2f}{", missed" * (ratio < AIM)} | | |')
    sys.exit(missed)


if __name__ == '__main__':
    main()
