"""Measures what a signature costs, beside botocore's signer, in microseconds of CPU.

    python benchmarks/signing.py

Nothing is sent by the first table. lowhaio-aws-sigv4 is put around a function that only answers,
and what that function takes by itself is subtracted. botocore signs an `AWSRequest` of the same
method, URL, fields and content. Both have their credentials already, and each request has a new
URL. The two take turns, and a figure is the median of the rounds.

The second table is about a part of 8 MiB that is in memory. It is sent over a socket pair to a
process that reads it, signed and unsigned, and the SHA-256 of the same bytes is measured in
between. It exits with 1 if a signature costs more than 0.25 of botocore's, or a signed part more
than 1.1 of its hash and an unsigned one.
"""
import argparse
import asyncio
import contextlib
import hashlib
import itertools
import os
import platform
import socket
import statistics
import sys
import time
from pathlib import Path

import botocore
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'layers' / 'aws_sigv4')]

from lowhaio import Pool, buffered, empty_async_iterator, streamed  # noqa: E402
from lowhaio_aws_sigv4 import signed  # noqa: E402

REGION = 'eu-west-2'
BUCKET = f'https://my-bucket.s3.{REGION}.amazonaws.com'
# As long as those that AWS gives, or half of it.
TOKEN = 'IQoJb3JpZ2luX2VjE' * 40
CONTENT = bytes(range(256)) * 4
PART = os.urandom(2 ** 20) * 8

NUMBER = 200
MOST = 0.25
MOST_OF_A_PART = 1.1


class Kind:
    def __init__(self, what, method, path, headers=(), content=b'', token=None, params=()):
        self.what = what
        self.method = method
        self.path = path
        self.headers = headers
        self.content = content
        self.token = token
        self.params = params


KINDS = (
    Kind('GET', b'GET', '/folder/object-%08d.bin'),
    Kind('GET of a range, with a token', b'GET', '/folder/object-%08d.bin',
         ((b'range', b'bytes=0-1048575'),), token=TOKEN),
    Kind('PUT of 1 KiB', b'PUT', '/folder/object-%08d.bin', content=CONTENT),
    Kind('PUT of 1 KiB, with fields and a token', b'PUT', '/folder/object-%08d.bin',
         ((b'Content-Type', b'application/octet-stream'), (b'x-amz-meta-a', b'of an object'),
          (b'x-amz-storage-class', b'STANDARD')), content=CONTENT, token=TOKEN),
    Kind('GET of a key with spaces', b'GET', '/my%%20folder/my%%20object%%20%08d.bin'),
    Kind('GET of a listing', b'GET', '/?list-type=2&prefix=folder%%2F%08d%%2F&delimiter=%%2F'),
)


def urls(kind, counter):
    return [BUCKET + kind.path % next(counter) for _ in range(NUMBER)]


def bytes_of(text):
    return text.encode()


class Lowhaio:
    """Signs by the layer. What the function below it takes is measured by itself."""

    def __init__(self, kind):
        fields = () if kind.token is None else (
            (b'x-amz-security-token', bytes_of(kind.token)),)

        async def credentials():
            return 'AKID', 'secret', fields

        async def sink(method, url, params=(), headers=(), body=empty_async_iterator,
                       body_args=(), body_kwargs=(), **kwargs):
            return b'200', (), None

        self.kind = kind
        self.sink = sink
        self.send = signed(sink, credentials, 's3', REGION)

    def cost(self, urls):
        return self.time(self.send, urls) - self.time(self.sink, urls)

    def time(self, send, urls):
        async def run():
            method, headers = self.kind.method, self.kind.headers
            start = time.thread_time()
            if self.kind.content:
                body = streamed(self.kind.content)
                for url in urls:
                    await send(method, url, headers=headers, body=body)
            elif headers:
                for url in urls:
                    await send(method, url, headers=headers)
            else:
                for url in urls:
                    await send(method, url)
            return time.thread_time() - start

        # Nothing in the coroutine waits, so it ends in one step.
        try:
            run().send(None)
        except StopIteration as stop:
            return stop.value / len(urls)
        raise RuntimeError('a signature has waited for something')


class Botocore:
    def __init__(self, kind):
        self.method = kind.method.decode()
        self.headers = {name.decode(): value.decode() for name, value in kind.headers}
        self.content = kind.content or None
        self.auth = S3SigV4Auth(Credentials('AKID', 'secret', kind.token), 's3', REGION)

    def cost(self, urls):
        start = time.thread_time()
        for url in urls:
            self.auth.add_auth(AWSRequest(
                method=self.method, url=url, headers=self.headers, data=self.content))
        return (time.thread_time() - start) / len(urls)


def signatures(rounds):
    """Yield what is signed, what it takes both in seconds, and the ratio."""
    counter = itertools.count()
    for kind in KINDS:
        both = Lowhaio(kind), Botocore(kind)
        # The counter makes the URLs of each round, and of both signers, new ones.
        times = [[signer.cost(urls(kind, counter)) for signer in both] for _ in range(rounds)]
        ours, theirs = map(statistics.median, zip(*times, strict=True))
        yield kind.what, ours, theirs, statistics.median(a / b for a, b in times)


# ------------------------------------------------------------------------------------ a part

def read_parts(sock):
    """Answer each request once all of it has come. It runs in a process of its own."""
    buffer = bytearray(2 ** 20)
    while data := sock.recv(65536):
        head, _, begun = data.partition(b'\r\n\r\n')
        while b'\r\n\r\n' not in data:
            data += sock.recv(65536)
            head, _, begun = data.partition(b'\r\n\r\n')
        left = len(PART) - len(begun)
        while left:
            left -= sock.recv_into(buffer, min(left, len(buffer)))
        sock.sendall(b'HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n')


async def part(send, number):
    _, _, body = await send(b'PUT', f'{BUCKET}/part-{number}', body=streamed(PART),
                            headers=((b'content-length', b'%d' % len(PART)),))
    await buffered(body)


async def times_of_a_part(sock, rounds):
    """The CPU of a signed part, and that of its hash and an unsigned one, in seconds."""
    async def get_connection(*_):
        sock.setblocking(False)
        return sock

    async def credentials():
        return 'AKID', 'secret', ()

    request, close = Pool(get_connection=get_connection, socket_timeout=60)

    async def connected(method, url, **kwargs):
        return await request(method, url.replace('https:', 'http:'), **kwargs)

    send = signed(connected, credentials, 's3', REGION)
    times = []
    for number in range(rounds):
        marks = [time.thread_time()]
        await part(send, number)
        marks.append(time.thread_time())
        hashlib.sha256(PART).hexdigest()
        marks.append(time.thread_time())
        await part(connected, number)
        marks.append(time.thread_time())
        times.append([later - sooner for sooner, later in itertools.pairwise(marks)])
    await close()
    return times


def a_part(rounds):
    ours, other = socket.socketpair()
    process = os.fork()
    if not process:
        ours.close()
        with contextlib.suppress(BaseException):
            read_parts(other)
        os._exit(0)
    other.close()
    times = asyncio.run(times_of_a_part(ours, rounds))
    os.waitpid(process, 0)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--rounds', type=int, default=101)
    rounds = parser.parse_args().rounds
    print(f'{platform.python_implementation()} {platform.python_version()}, '
          f'botocore {botocore.__version__}, {platform.machine()}, {rounds} rounds\n')

    print('| µs of CPU | lowhaio | botocore | ratio |\n| --- | --- | --- | --- |')
    is_missed = False
    for what, ours, theirs, ratio in signatures(rounds):
        is_missed |= ratio > MOST
        print(f'| {what} | {ours * 1e6:.1f} | {theirs * 1e6:.1f} | {ratio:.3f} |')

    times = a_part(max(21, rounds // 2))
    signed_one, hashing, unsigned = map(statistics.median, zip(*times, strict=True))
    ratio = signed_one / (hashing + unsigned)
    is_missed |= ratio > MOST_OF_A_PART
    print('\n| ms of CPU, 8 MiB | signed | its SHA-256 | unsigned | ratio |\n'
          '| --- | --- | --- | --- | --- |\n'
          f'| PUT of a part | {signed_one * 1e3:.1f} | {hashing * 1e3:.1f} '
          f'| {unsigned * 1e3:.1f} | {ratio:.3f} |')
    sys.exit(is_missed)


if __name__ == '__main__':
    main()
