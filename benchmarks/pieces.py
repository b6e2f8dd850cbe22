"""Measures the pieces that a request is made of, in nanoseconds.

    python benchmarks/pieces.py

Each figure is the least of several repetitions, minus the cost of an empty loop. It tells how much
could be saved at most if a piece were left out. A small request takes some 20,000 ns or more.

The last lines are what the fields of a request add to it: 18, as an SDK sends, over a socket pair
to a process that answers whatever comes. They need aiodnsresolver.
"""
import asyncio
import contextlib
import itertools
import os
import platform
import select
import socket
import statistics
import sys
import time
import timeit
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

SMALL = b'HTTP/1.1 200 OK\r\n' + b'x-field: of a small response\r\n' * 9 + b'\r\n' + bytes(100)
LARGE = bytes(131072)


class Slotted:
    __slots__ = ('value',)

    def __init__(self):
        self.value = 1


class Plain:
    def __init__(self):
        self.value = 1

    def method(self):
        pass


async def coroutine():
    pass


def function():
    pass


def nanoseconds(statement, names, number=20_000, repeat=15):
    def least(code):
        timer = timeit.Timer(code, timer=time.thread_time, globals=names)
        return min(timer.repeat(repeat, number)) / number

    return (least(statement) - least('pass')) * 1e9


def in_a_coroutine(names, statement, number=20_000, repeat=15):
    """The cost of a statement that awaits, in nanoseconds."""
    scope = {}
    exec(f'async def run():\n for _ in range({number}):\n  {statement}\n', names, scope)

    def least():
        times = []
        for _ in range(repeat):
            running = scope['run']()
            start = time.thread_time()
            try:
                running.send(None)
            except StopIteration:
                times.append(time.thread_time() - start)
        return min(times) / number

    return least() * 1e9


def closure_read():
    value = 1

    def read():
        return value

    return read


def socket_pieces():
    ours, other = socket.socketpair()
    buffer = bytearray(131072)
    poller = select.poll()
    poller.register(ours.fileno(), select.POLLIN)
    for sock in (ours, other):
        sock.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, 2 ** 20)
    names = {'ours': ours, 'other': other, 'buffer': buffer, 'view': memoryview(buffer),
             'poller': poller, 'SMALL': SMALL, 'LARGE': LARGE}
    with ours, other:
        for what, data, number in (('a small response', 'SMALL', 5000), ('128 KiB', 'LARGE', 200)):
            into = nanoseconds(f'other.send({data}); ours.recv_into(buffer)', names, number)
            for way in ('ours.recv(16384)', 'ours.recv(122880)', 'ours.recv(131072)',
                        'bytes(view[:ours.recv_into(buffer)])'):
                if data == 'LARGE' and '16384' in way:
                    way = 'for _ in range(8): ours.recv(16384)'
                cost = nanoseconds(f'other.send({data})\n{way}', names, number)
                yield f'{what}: {way}, more than recv_into alone', cost - into
        yield 'poll(0) of one socket', nanoseconds('poller.poll(0)', names)
        yield 'recv(1) that finds nothing', nanoseconds(
            'try:\n ours.recv(1)\nexcept BlockingIOError:\n pass', names)


def pieces(loop):
    names = {'slotted': Slotted(), 'plain': Plain(), 'read': closure_read(), 'loop': loop,
             'coroutine': coroutine, 'function': function}
    yield 'an attribute, with slots', nanoseconds('slotted.value', names)
    yield 'an attribute, without', nanoseconds('plain.value', names)
    yield 'a function', nanoseconds('function()', names)
    yield 'a function that reads its closure', nanoseconds('read()', names)
    yield 'a method', nanoseconds('plain.method()', names)
    yield 'a coroutine that does not wait, awaited', in_a_coroutine(names, 'await coroutine()')
    yield 'a future made, and dropped', nanoseconds('loop.create_future()', names)
    yield 'the time of the loop', nanoseconds('loop.time()', names)
    yield from socket_pieces()


def turn(loop, number=20_000, repeat=5):
    """The cost of a turn of the loop in which one task goes on."""
    async def run():
        for _ in range(number):
            await asyncio.sleep(0)

    def once():
        start = time.thread_time()
        loop.run_until_complete(run())
        return time.thread_time() - start

    return min(once() for _ in range(repeat)) / number * 1e9


# The fields of a request, as the SDK of a model sends them.
FIELDS = tuple(
    tuple(line.split(b': ', 1)) for line in
    b'''accept: application/json
accept-encoding: gzip, deflate, br, zstd
connection: keep-alive
content-type: application/json
user-agent: AsyncOpenAI/Python 3.57.0
x-stainless-lang: python
x-stainless-package-version: 3.57.0
x-stainless-os: Linux
x-stainless-arch: x64
x-stainless-runtime: CPython
x-stainless-runtime-version: 3.11.7
x-stainless-async: async:asyncio
x-stainless-retry-count: 0
x-stainless-read-timeout: 600
x-stainless-raw-response: true
openai-organization: org-0123456789abcdef
openai-project: proj_0123456789abcdef
x-client-request-id: 01234567-89ab-cdef-0123-456789abcdef'''.splitlines())


def answer(sock):
    """Answer each request of a connection. It runs in a process of its own."""
    response = b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n' + bytes(100)
    while data := sock.recv(65536):
        if data.endswith(b'\r\n\r\n'):
            sock.sendall(response)


def fields_of_a_request(number=2_000, repeat=7):
    """What fields add to the CPU of a request: the median of rounds that take turns."""
    secret = b'authorization', b'Bearer sk-0123456789abcdef0123456789abcdef0123456789abcdef'
    traces = (b'traceparent', b'00-0123456789abcdef-%016x-01')
    counter = itertools.count()
    kinds = {
        'no fields': lambda: (),
        '18 fields': lambda: FIELDS,
        '18 fields, one of them a secret': lambda: (*FIELDS[:-1], secret),
        '18 fields, one of them new each time': lambda: (
            *FIELDS[:-1], (traces[0], traces[1] % next(counter))),
    }
    ours, other = socket.socketpair()
    process = os.fork()
    if not process:
        ours.close()
        with contextlib.suppress(BaseException):
            answer(other)
        os._exit(0)
    other.close()
    times = asyncio.run(times_of_requests(ours, kinds, number, repeat))
    os.waitpid(process, 0)
    for what in [*kinds][1:]:
        yield what, statistics.median(
            cost - least for cost, least in zip(times[what], times['no fields'], strict=True))


async def times_of_requests(sock, kinds, number, repeat):
    from lowhaio import Pool, buffered

    async def get_connection(*_):
        sock.setblocking(False)
        return sock

    request, close = Pool(get_connection=get_connection)
    times = {what: [] for what in kinds}
    for _ in range(repeat):
        for what, fields in kinds.items():
            start = time.thread_time()
            for _ in range(number):
                _, _, body = await request(b'GET', 'http://127.0.0.1/', headers=fields())
                await buffered(body)
            times[what].append((time.thread_time() - start) / number * 1e9)
    await close()
    return times


def main():
    print(f'{platform.python_implementation()} {platform.python_version()}, {platform.machine()}')
    loop = asyncio.new_event_loop()
    for what, cost in (*pieces(loop), ('a turn of the loop', turn(loop))):
        print(f'{cost:>9,.0f}  {what}')
    loop.close()
    with contextlib.suppress(ImportError):
        import uvloop
        loop = uvloop.new_event_loop()
        print(f'{turn(loop):>9,.0f}  a turn of uvloop')
        loop.close()
    for what, cost in fields_of_a_request():
        print(f'{cost:>9,.0f}  {what}')


if __name__ == '__main__':
    main()
