"""Counts the function calls and bytecode instructions of lowhaio.py in a few fixed exchanges.

They are compared with the counts in guard.json for this version of Python. No time is measured, so
the counts are the same on any machine.

    python benchmarks/guard.py            exits with 1 if there are 10 % more than recorded
    python benchmarks/guard.py --record

The server is the other end of a socket pair, in the same event loop, and answers each request in
one write. A resumed coroutine counts as a call.
"""
import argparse
import asyncio
import json
import socket
import sys
from pathlib import Path

import lowhaio
from lowhaio import Pool, buffered, streamed

RECORD = Path(__file__).with_name('guard.json')
VERSION = '{}.{}'.format(*sys.version_info)
TOLERANCE = 0.1
WARM_UP = 20
NUMBER = 10

FIELDS = (b'server: nginx\r\ndate: Sat, 01 Nov 2025 12:00:00 GMT\r\n'
          b'content-type: application/octet-stream\r\nlast-modified: Sat, 01 Nov 2025 11:00:00 GMT'
          b'\r\netag: "6905e8f0-64"\r\naccept-ranges: bytes\r\n')
SMALL = b'HTTP/1.1 200 OK\r\n' + FIELDS + b'content-length: 100\r\n%b\r\n' + b'-' * 100
RESPONSES = {
    b'/small': SMALL % b'connection: keep-alive\r\n',
    b'/close': SMALL % b'connection: close\r\n',
    b'/chunked': (b'HTTP/1.1 200 OK\r\n' + FIELDS + b'transfer-encoding: chunked\r\n\r\n'
                  + b'14\r\n01234567890123456789\r\n' * 20 + b'0\r\n\r\n'),
}
REQUEST_END = {b'GET': b'\r\n\r\n', b'POST': b'!'}


class Server:
    """A server at the other ends of socket pairs."""

    def __init__(self):
        self.socks = []

    async def get_connection(self, *_):
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self.socks.append(theirs)
        asyncio.get_running_loop().add_reader(theirs, self.answer, theirs)
        return ours

    def answer(self, sock):
        request = sock.recv(65536)
        if request:
            method, path, _ = request.split(b' ', 2)
            # Each request arrives whole.
            assert request.endswith(REQUEST_END[method]), request
            sock.send(RESPONSES[path])
        else:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()
            self.socks.remove(sock)

    def close(self):
        for sock in self.socks:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()


async def get(request, path):
    _, _, body = await request(b'GET', 'http://localhost' + path)
    return len(await buffered(body))


async def post(request, path):
    headers = ((b'content-type', b'text/plain'), (b'content-length', b'1024'))
    _, _, body = await request(
        b'POST', 'http://localhost' + path, headers=headers, body=streamed(b'-' * 1023 + b'!'))
    return len(await buffered(body))


async def chunks():
    for _ in range(19):
        yield b'-' * 1024
    yield b'-' * 1023 + b'!'


async def upload(request, path):
    headers = ((b'content-type', b'text/plain'), (b'content-length', b'20480'))
    _, _, body = await request(b'POST', 'http://localhost' + path, headers=headers, body=chunks)
    return len(await buffered(body))


async def stream(request, path):
    _, _, body = await request(b'GET', 'http://localhost' + path)
    length = 0
    async for chunk in body:
        length += len(chunk)
    return length


# For each exchange, the function that makes it, the path, and the length of the content.
EXCHANGES = {
    'get': (get, '/small', 100),
    'post': (post, '/small', 100),
    'upload': (upload, '/small', 100),
    'chunked': (stream, '/chunked', 400),
    'connect': (get, '/close', 100),
}


class Counter:
    """Counts the calls and instructions in the file of lowhaio."""

    def __init__(self):
        self.calls = self.instructions = 0

    def __enter__(self):
        # CPython 3.12 looks at this only when tracing starts.
        sys._getframe().f_trace_opcodes = True
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_):
        sys.settrace(None)

    def trace(self, frame, event, _):
        if frame.f_code.co_filename != lowhaio.__file__:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        self.calls += event == 'call'
        self.instructions += event == 'opcode'
        return self.trace


async def count(exchange):
    """The calls and instructions of one exchange."""
    call, path, length = exchange
    server = Server()
    request, close = Pool(get_connection=server.get_connection)
    try:
        with Counter() as counter:
            # The warm-up is traced as well, because CPython 3.13 begins to report instructions in
            # the middle of a call.
            for _ in range(WARM_UP):
                await call(request, path)
            counter.calls = counter.instructions = 0
            for _ in range(NUMBER):
                assert await call(request, path) == length
    finally:
        await close()
        server.close()
    return counter.calls / NUMBER, counter.instructions / NUMBER


def compare(counts, recorded):
    """Whether all counts are near enough to the recorded ones."""
    is_kept = True
    print(f'{"":10}{"":14}{"counted":>10}{"recorded":>10}')
    for name, figures in counts.items():
        for kind, figure, before in zip(
                ('calls', 'instructions'), figures, recorded[name], strict=True):
            change = figure / before - 1
            verdict = 'MORE' if change > TOLERANCE else \
                'less: record it' if change < -TOLERANCE else ''
            is_kept = is_kept and change <= TOLERANCE
            print(f'{name:10}{kind:14}{figure:10.1f}{before:10.1f}{change:+8.1%}   {verdict}')
    return is_kept


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--record', action='store_true', help='for this version of Python')
    args = parser.parse_args()

    counts = {name: asyncio.run(count(exchange)) for name, exchange in EXCHANGES.items()}
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if args.record:
        record[VERSION] = counts
        RECORD.write_text(json.dumps(dict(sorted(record.items())), indent=1) + '\n')
        print(f'Recorded for Python {VERSION}: {counts}')
    elif VERSION not in record:
        sys.exit(f'Nothing is recorded for Python {VERSION}')
    elif not compare(counts, record[VERSION]):
        sys.exit(1)


if __name__ == '__main__':
    main()
