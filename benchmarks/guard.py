"""Counts the function calls and bytecode instructions of lowhaio.py in a few fixed exchanges.

Those of layers are counted, too, around a GET with whose response they have nothing to do.

They are compared with the counts in guard.json for this version of Python. No time is measured, so
the counts are the same on any machine.

    python benchmarks/guard.py            exits with 1 if there are 10 % more than recorded
    python benchmarks/guard.py --record
    valgrind --tool=cachegrind python benchmarks/guard.py --repeat retry 600

The last one counts nothing itself. The instructions of the processor for 600 exchanges, less those
for 100, show what is done in C as well.

The server is the other end of a socket pair, in the same event loop, and answers each request in
one write. A resumed coroutine counts as a call.
"""
import argparse
import asyncio
import json
import socket
import sys
from functools import partial
from http.cookiejar import Cookie, CookieJar
from pathlib import Path

LAYERS = Path(__file__).parents[1] / 'layers'
sys.path[:0] = [str(LAYERS / name) for name in (
    'auth', 'chunked', 'compression', 'cookies', 'form', 'opentelemetry', 'redirect', 'retry',
    'session')]

import lowhaio  # noqa: E402
import lowhaio_auth  # noqa: E402
import lowhaio_compression  # noqa: E402
import lowhaio_cookies  # noqa: E402
import lowhaio_opentelemetry  # noqa: E402
import lowhaio_redirect  # noqa: E402
import lowhaio_retry  # noqa: E402
import lowhaio_session  # noqa: E402
from lowhaio import Pool, buffered, streamed  # noqa: E402
from lowhaio_auth import basic, bearer, digest  # noqa: E402
from lowhaio_compression import decompressed  # noqa: E402
from lowhaio_cookies import with_cookies  # noqa: E402
from lowhaio_opentelemetry import Telemetry  # noqa: E402
from lowhaio_redirect import redirectable  # noqa: E402
from lowhaio_retry import retry  # noqa: E402
from lowhaio_session import Session  # noqa: E402

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


async def get_of_session(session, path):
    response = await session.get(path)
    return len(await response.bytes())


def bare(request):
    return request


def one_field(request):
    """No layer, but a field that the caller gives, as most requests have one."""
    return partial(request, headers=((b'accept-encoding', b'gzip, deflate'),))


def no_cookies(request):
    return with_cookies(request, CookieJar())


def cookies(request):
    """A layer with a jar of one cookie, which goes to the server."""
    request = with_cookies(request, jar := CookieJar())
    jar.set_cookie(COOKIE)
    return request


def session(request):
    return Session('http://localhost', request=request)


COOKIE = Cookie(0, 'name', 'value', None, False, 'localhost', False, False, '/', True, False, None,
                True, None, None, {})
password = partial(basic, username='user', password='password', origin='http://localhost')
token = partial(bearer, get_token=lambda: 'token', origin='http://localhost')
proof = partial(digest, username='user', password='password', origin='http://localhost')
whole = partial(retry, max_buffered=1000)
# There are no spans, because there is no SDK of OpenTelemetry that they could go to.
traced = Telemetry().traced


def stacked(request):
    return decompressed(redirectable(whole(cookies(password(request)))))

# For each exchange, the layers, the function that makes it, the path, and the length of the
# content.
EXCHANGES = {
    'get': (bare, get, '/small', 100),
    'post': (bare, post, '/small', 100),
    'upload': (bare, upload, '/small', 100),
    'chunked': (bare, stream, '/chunked', 400),
    'connect': (bare, get, '/close', 100),
    'field': (one_field, get, '/small', 100),
    'retry': (retry, get, '/small', 100),
    'whole': (whole, get, '/small', 100),
    'redirect': (redirectable, get, '/small', 100),
    'decompressed': (decompressed, get, '/small', 100),
    'no-cookies': (no_cookies, get, '/small', 100),
    'cookies': (cookies, get, '/small', 100),
    'basic': (password, get, '/small', 100),
    'bearer': (token, get, '/small', 100),
    'digest': (proof, get, '/small', 100),
    'traced': (traced, get, '/small', 100),
    'stacked': (stacked, get, '/small', 100),
    'session': (session, get_of_session, '/small', 100),
}
FILES = frozenset(module.__file__ for module in (
    lowhaio, lowhaio_auth, lowhaio_compression, lowhaio_cookies, lowhaio_opentelemetry,
    lowhaio_redirect, lowhaio_retry, lowhaio_session))


class Counter:
    """Counts the calls and instructions in the files of lowhaio and its layers."""

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
        if frame.f_code.co_filename not in FILES:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        self.calls += event == 'call'
        self.instructions += event == 'opcode'
        return self.trace


async def count(exchange):
    """The calls and instructions of one exchange."""
    layers, call, path, length = exchange
    server = Server()
    request, close = Pool(get_connection=server.get_connection)
    request = layers(request)
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


async def repeat(exchange, number):
    """Make an exchange so often, for those who measure the process from outside."""
    layers, call, path, length = exchange
    server = Server()
    request, close = Pool(get_connection=server.get_connection)
    request = layers(request)
    for _ in range(number):
        assert await call(request, path) == length
    await close()
    server.close()


def compare(counts, recorded):
    """Whether all counts are near enough to the recorded ones."""
    is_kept = True
    print(f'{"":14}{"":14}{"counted":>10}{"recorded":>10}')
    for name, figures in counts.items():
        if name not in recorded:
            print(f'{name:14}nothing is recorded for this Python')
            continue
        for kind, figure, before in zip(
                ('calls', 'instructions'), figures, recorded[name], strict=True):
            change = figure / before - 1
            verdict = 'MORE' if change > TOLERANCE else \
                'less: record it' if change < -TOLERANCE else ''
            is_kept = is_kept and change <= TOLERANCE
            print(f'{name:14}{kind:14}{figure:10.1f}{before:10.1f}{change:+8.1%}   {verdict}')
    return is_kept


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--record', action='store_true', help='for this version of Python')
    parser.add_argument('--repeat', nargs=2, metavar=('EXCHANGE', 'NUMBER'), help='count nothing')
    args = parser.parse_args()
    if args.repeat:
        asyncio.run(repeat(EXCHANGES[args.repeat[0]], int(args.repeat[1])))
        return

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
