"""What the tests share: loops, scripted servers, certificates, names, bodies and bytes.

Tests here, the layers' and the searches import it as `tests.harness`. What only one of them needs
is in that file.
"""

import ast
import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import datetime
import errno
import functools
import gc
import heapq
import http.server
import inspect
import ipaddress
import itertools
import os
import pathlib
import re
import resource
import select
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import types
import warnings
from collections.abc import Awaitable, Callable

import aiodnsresolver
import dnslib
import dnslib.server
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import lowhaio
from lowhaio import Pool, buffered


# ------------------------------------------------------------------------------------------- loops


try:
    import uvloop
except ImportError:
    uvloop = None

LOOPS = {'asyncio': asyncio.SelectorEventLoop}

if uvloop is not None:
    class UvLoop(uvloop.Loop):
        """One that says what was left open when it is closed.

        It warns of each handle that is still open. Where warnings are errors it does not close
        such a handle then, and waits for its end for ever.
        """

        def close(self):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter('always')
                super().close()
            assert [str(warning.message) for warning in caught] == []

    LOOPS['uvloop'] = UvLoop
    UvLoop().close()  # the first one opens descriptors that stay


class StandingClock:
    """Mixed into an event loop, it makes time stand still until a test lets some of it pass."""

    def __init__(self):
        super().__init__()
        self.now = 1000.0
        self.timers = []
        self.numbers = itertools.count()

    def time(self):
        return self.now

    def call_later(self, delay, callback, *args, context=None):
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(self, when, callback, *args, context=None):
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        if when <= self.now:
            self.call_soon(run_timer, timer)
        else:
            heapq.heappush(self.timers, (when, next(self.numbers), timer))
        return timer

    def _timer_handle_cancelled(self, timer):
        """A cancelled timer is dropped when it is due."""

    def next_due(self):
        """When the next timer is due that has not been cancelled. None if there is no other."""
        while self.timers and self.timers[0][2].cancelled():
            heapq.heappop(self.timers)
        return self.timers[0][0] if self.timers else None

    def set_time(self, now):
        """What is due by then is called at the next turn, as by a loop that was late."""
        self.now = now
        while self.timers and self.timers[0][0] <= now:
            timer = heapq.heappop(self.timers)[2]
            if not timer.cancelled():
                self.call_soon(run_timer, timer)


def run_timer(timer):
    if not timer.cancelled():
        timer._run()


async def passing(seconds: float) -> None:
    """Let time pass on a loop whose clock stands.

    What is ready happens first. Then the clock goes from one timer to the next, and after each of
    them what has become ready happens.
    """
    loop = asyncio.get_running_loop()
    # Sums of binary fractions are not exact, and what is due then may be due a little later.
    end = round(loop.now + seconds, 6)
    await settling()
    while (due := loop.next_due()) is not None and due < end + 1e-6:
        loop.set_time(max(loop.now, due))
        await settling()
    loop.set_time(max(loop.now, end))


async def settling(is_over: Callable[[], object] = lambda: False) -> None:
    """Let happen what is on its way between the two ends of a connection on the same loop, or
    less, if that is over before."""
    for _ in range(3):
        await turns(5)
        if is_over():
            return
        time.sleep(0.0005)
    await turns(5)


CLOCKED = {name: type(f'StandingClock on {name}', (StandingClock, kind), {})
           for name, kind in {'asyncio': asyncio.SelectorEventLoop,
                              'uvloop': LOOPS.get('uvloop')}.items() if name in LOOPS}

SCHEMES = pytest.mark.parametrize('scheme', ['http', 'https'])

# After so many seconds a test has hung. No test waits for them to pass.
PATIENCE = 60


Test = Callable[..., Awaitable[None]]


def on_loops(test: Test, loops=tuple(LOOPS), kinds=LOOPS) -> Callable[..., None]:
    """Run an async test function on each loop, and look at what it leaves behind."""
    @pytest.mark.parametrize('loop_name', loops)
    @functools.wraps(test)
    def wrapper(*args, loop_name, **kwargs):
        with nothing_left() as errors:
            run_on(kinds[loop_name], loop_name, errors, test, *args, **kwargs)

    # pytest finds the fixtures and parameters that a test wants in its signature.
    signature = inspect.signature(test)
    wrapper.__signature__ = signature.replace(parameters=[
        *signature.parameters.values(),
        inspect.Parameter('loop_name', inspect.Parameter.KEYWORD_ONLY)])
    return wrapper


def on_one_loop(test: Test) -> Callable[..., None]:
    """As `on_loops`, for many cases in which the loop makes no difference."""
    return on_loops(test, ['asyncio'])


def on_clock(test: Test) -> Callable[..., None]:
    """As `on_loops`, but time passes only in `passing`. So a test of a time-out takes no time, and
    fails on no busy machine."""
    return on_loops(test, tuple(CLOCKED), CLOCKED)


def on_loops_at_once(test: Test) -> Callable[..., None]:
    """As `on_loops`, but with the loops in threads of their own, beside each other.

    This is for tests that mostly wait for time to pass. The loops share the fixtures.
    """
    @functools.wraps(test)
    def wrapper(*args, **kwargs):
        with nothing_left() as errors, concurrent.futures.ThreadPoolExecutor() as executor:
            runs = [executor.submit(run_on, LOOPS[loop_name], loop_name, errors, test,
                                    *args, **kwargs)
                    for loop_name in LOOPS]
            for run in runs:
                run.result()

    return wrapper


def run_on(kind, loop_name, errors, test, /, *args, **kwargs):
    """Run the test on a new loop, and collect what that complains of."""
    def on_error(loop, context):
        # In debug mode, asyncio's servers report the clients that refuse their handshake.
        if context['message'] != 'Error on transport creation for incoming connection':
            errors.append(context)

    def make_task(loop, coro, **kwargs):
        # A generator that was dropped unfinished is closed by the loop, in a task.
        if type(coro).__name__.startswith('async_generator'):
            errors.append(f'a task for {coro!r}')
        return asyncio.Task(coro, loop=loop, **kwargs)

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(on_error)
        loop.set_task_factory(make_task)
        async with patience():
            await test(*args, **kwargs)
        gc.collect()
        # What is done by callbacks of what has just ended is part of the test.
        await turns(5)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        # At its end the loop closes generators, in tasks, that an exception of the test refers to.
        loop.set_task_factory(None)

    with row(loop_name), asyncio.Runner(loop_factory=kind) as runner:
        runner.run(main())


@contextlib.asynccontextmanager
async def patience():
    """Make a failure of a hang, also on a loop whose clock stands."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, StandingClock):
        async with asyncio.timeout(PATIENCE):
            yield
        return
    async with asyncio.timeout(None) as limit:
        end = threading.Timer(PATIENCE, loop.call_soon_threadsafe, [limit.reschedule, 0])
        end.start()
        try:
            yield
        finally:
            end.cancel()
            end.join()


@contextlib.contextmanager
def nothing_left():
    """Yield a list for the complaints of loops. Afterwards it must be empty, and no new descriptor
    may be open."""
    # What is there already is not the test's. Without this, each collection would look at all
    # that pytest keeps of the tests before, and that would be half of the time of the whole run.
    gc.freeze()
    before = open_descriptors()
    errors = []
    yield errors
    gc.collect()
    assert errors == []
    assert open_descriptors() == before


def open_descriptors() -> set[str]:
    return set(os.listdir('/dev/fd'))


async def turns(number: int) -> None:
    """Let the loop turn, so that what is ready happens."""
    for _ in range(number):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    """Wait for what must happen sooner or later."""
    clock_stands = isinstance(asyncio.get_running_loop(), StandingClock)
    while not condition():
        await (settling(condition) if clock_stands else asyncio.sleep(0.001))


async def until_idle() -> None:
    """Wait until this thread uses nearly no CPU for a moment, although the loop may be woken.

    Whatever looks at the same thing again and again never lets it come to that. What is left to
    do on a slow machine only delays it.
    """
    share = 1.0
    while share > 0.2:
        cpu, started = time.thread_time(), time.monotonic()
        await asyncio.sleep(0.1)
        share = (time.thread_time() - cpu) / (time.monotonic() - started)


async def forever():
    """Wait for what never comes."""
    await asyncio.Event().wait()


def cancelling():
    """How many cancellations of the current task have not been taken back."""
    return asyncio.current_task().cancelling()


async def run_until(coroutine, condition):
    """Run a coroutine in the current task, until it waits and the condition holds."""
    cancellation = None
    while True:
        waited_for = coroutine.throw(cancellation) if cancellation else coroutine.send(None)
        cancellation = None
        try:
            if waited_for is None:
                await turns(1)
            else:
                waited_for._asyncio_future_blocking = False
                await until(lambda: waited_for.done() or condition())  # noqa: B023
        except asyncio.CancelledError as error:
            cancellation = error
        if condition():
            return


@contextlib.contextmanager
def row(name):
    """Name the row when it fails, in a test that runs the rows of a table one after the other."""
    try:
        yield
    except BaseException as error:
        error.add_note(f'in the row: {name}')
        raise


def run_rows(rows, tmp_path_factory):
    """Run functions, each with the name of its row, its arguments and the names of its fixtures.

    All are run, so all failures are told. A row that was skipped is told if none has failed.
    """
    failures = []
    skipped = []
    for name, function, kwargs, fixtures in rows:
        try:
            with row(name), pytest.MonkeyPatch.context() as monkeypatch:
                made = {'monkeypatch': monkeypatch, 'tmp_path': 'tmp_path' in fixtures
                        and tmp_path_factory.mktemp('row')}
                function(**kwargs, **{name: made[name] for name in fixtures})
        except pytest.skip.Exception as error:
            skipped.append(error)
        except (Exception, pytest.fail.Exception) as error:
            failures.append(error)
    if len(failures) > 1:
        raise BaseExceptionGroup(f'{len(failures)} of {len(rows)} rows failed', failures)
    for error in failures + skipped:
        raise error


def run_script(script, *args, **kwargs):
    """Run some Python in a process of its own, with all warnings as errors."""
    return subprocess.run(
        [sys.executable, '-X', 'dev', '-W', 'error', '-c', script, *args], text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT)}, timeout=PATIENCE, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kwargs)


@contextlib.contextmanager
def no_descriptor_left():
    """Within it no file or socket can be opened, for want of descriptors."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# ---------------------------------------------------------------------------------------- requests


@contextlib.asynccontextmanager
async def pool(**options):
    """A pool's `request`, and afterwards its `close`."""
    request, close = Pool(**options)
    try:
        yield request
    finally:
        await close()


async def get(request, url, **kwargs):
    """Make a GET request, and return code, headers and all of the body."""
    code, headers, body = await request(b'GET', url, **kwargs)
    return code, headers, await buffered(body)


async def read_before(body):
    """Check that the body can not be read again."""
    with pytest.raises(RuntimeError, match='^the response body has been read: it can be read '
                                           r'once, so keep what buffered\(\) returned$'):
        await buffered(body)


def default_of(option):
    """The default value of an option of `Pool`."""
    return inspect.signature(Pool).parameters[option].default


MAY_BE_TLS = ' (the port may be for https)'


async def failure(awaitable) -> lowhaio.HttpError:
    """The error that awaiting this raises."""
    with pytest.raises(lowhaio.HttpError) as info:
        await awaitable
    return info.value


def where(server, method='GET'):
    """How the message of an error begins."""
    return f'{method} {server.origin} (peer 127.0.0.1:{server.port}), '


WAS_CLOSED = 'ConnectionAbortedError: the response body was closed before its end'


async def failed(awaitable, kind, cause, message=None):
    """The error that awaiting this raises, of this kind, with this cause and message.

    It must leave no cancellation in the current task.
    """
    before = asyncio.current_task().cancelling()
    with pytest.raises(lowhaio.HttpError) as caught:
        await awaitable
    error = caught.value
    assert asyncio.current_task().cancelling() == before
    assert type(error) is kind
    assert cause is None or type(error.__cause__) is cause
    assert message is None or str(error) == message
    return error


async def measured(awaitable, has_begun=lambda: True):
    """How many seconds it takes, and the task that has ended.

    For a loop whose clock stands. Time passes only when nothing else happens any more. A kernel
    may acknowledge what was sent up to 0.2 s later, and make room for more. If it does so just
    when time passes, a sending takes longer than it should, but it ends.
    """
    loop = asyncio.get_running_loop()
    begin = loop.now
    task = asyncio.ensure_future(awaitable)
    await until(has_begun)
    while True:
        for _ in range(2):
            if not task.done():
                await settling(task.done)
        if task.done():
            return round(loop.now - begin, 3), task
        due = loop.next_due()
        assert due is not None, 'it waits for ever'
        loop.set_time(max(loop.now, due))


async def ends_after(seconds, awaitable, has_begun=lambda: True):
    """A task that ends when so much time has passed since it began to wait, and no sooner.

    For a loop whose clock stands. Nothing may begin the time anew meanwhile, as a kernel may for
    a sending: see `measured`.
    """
    task = asyncio.ensure_future(awaitable)
    await until(has_begun)
    await passing(seconds - 0.001)
    assert not task.done()
    await passing(0.001)
    await until(task.done)  # the clock stands: it is not too late
    return task


def peer_prefix(server, method='GET'):
    """How the message of an error begins that came when there was a connection already."""
    return f'{method} {server.origin} (peer 127.0.0.1:{server.port})'


def system_error(kind, number):
    """How an error of the system is told in a message."""
    return f'{kind.__name__}: [Errno {number}] {os.strerror(number)}'


REFUSED = system_error(ConnectionRefusedError, errno.ECONNREFUSED)
WAITING = 'waiting for a connection failed: '


def uploading(request, server, body, number=0, length=10 ** 9, headers=()):
    """A PUT request with a body of a declared length."""
    return request(b'PUT', f'{server.url}{number}', headers=(*of_length(length), *headers),
                   body=body)


# ------------------------------------------------------------------------------ bytes of responses

OK = b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok'


def head(*lines: bytes, start: bytes = b'HTTP/1.1 200 OK') -> bytes:
    """The head of a response, with its fields as lines."""
    return b'\r\n'.join((start, *lines, b'', b''))


def wire_table(name):
    """The rows of a table in the directory wire, by name."""
    return tomllib.loads((ROOT / 'tests' / 'wire' / f'{name}.toml').read_text(encoding='utf-8'))


def wire_bytes(text) -> bytes:
    """The bytes that a table gives: as text of which each character is a byte, as a number and the
    text that is repeated so often, or as a list of these."""
    if isinstance(text, str):
        return text.encode('latin-1')
    if text and isinstance(text[0], int):
        count, repeated = text
        return count * wire_bytes(repeated)
    return b''.join(map(wire_bytes, text))


def response(code: int = 200, body: bytes = b'', *fields: bytes) -> bytes:
    """A whole response, with its fields as lines."""
    lines = [b'HTTP/1.1 %d Reason' % code, *fields, b'content-length: %d' % len(body)]
    return b'\r\n'.join(lines) + b'\r\n\r\n' + body


def with_length(*lines: bytes, start: bytes = b'HTTP/1.1 200 OK') -> bytes:
    """A response of two bytes."""
    return head(*lines, b'content-length: 2', start=start) + b'ok'


def chunked(body: bytes, *lines: bytes, start: bytes = b'HTTP/1.1 200 OK') -> bytes:
    """A response whose body is given in chunks that are encoded already."""
    return head(b'transfer-encoding: chunked', *lines, start=start) + body


NO_CONTENT = b'HTTP/1.1 204 No Content'
SWITCHING = b'HTTP/1.1 101 Switching Protocols'
CONTINUE = b'HTTP/1.1 100 Continue\r\n\r\n'
UPGRADE = ((b'connection', b'upgrade'), (b'upgrade', b'chat'))
CLOSED = 'the peer closed the connection'


def cut_into_bytes(raw):
    """The pieces in which something is sent byte by byte, or by 97 bytes if it is long."""
    # Something long shows no more than something short, and takes longer.
    step = 1 if len(raw) < 300 else 97
    return [raw[i:i + step] for i in range(0, len(raw), step)]


EVIL = b'HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil'
UNFINISHED = b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nok'
FORGED = b'HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged'
CLOSE_DELIMITED = b'HTTP/1.1 200 OK\r\n\r\nsome'
CHUNKED = b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nsome\r\n'
HINTS = b'HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\n'
LONG_BODY = bytes(range(256)) * 1000

CODED = (b'HTTP/1.1 429 Too Many Requests\r\ntransfer-encoding: chunked\r\n\r\n'
         b'1\r\no\r\n1;x=y\r\nk\r\n0\r\n')

# Responses that end the sending: the code, the body, the trailers, and what is on the wire.
FINAL = {
    '300': (b'300', b'ok', (), with_length(start=b'HTTP/1.1 300 Multiple Choices')),
    '302': (b'302', b'ok', (), with_length(b'location: /', start=b'HTTP/1.1 302 Found')),
    '304': (b'304', b'', (), b'HTTP/1.1 304 Not Modified\r\n\r\n'),
    '413': (b'413', b'ok', (), with_length(start=b'HTTP/1.1 413 Content Too Large')),
    '500': (b'500', b'ok', (), with_length(start=b'HTTP/1.1 500 Internal Server Error')),
    '503 in HTTP/1.0': (b'503', b'', (), b'HTTP/1.0 503 \r\ncontent-length: 0\r\n\r\n'),
    '999': (b'999', b'ok', (), with_length(start=b'HTTP/1.1 999 ')),
    'chunked': (b'429', b'ok', (), CODED + b'\r\n'),
    'trailers': (b'429', b'ok', ((b'a', b'b'),), CODED + b'A: b\r\n\r\n'),
    'long': (b'403', LONG_BODY, (), b'HTTP/1.1 403 Forbidden\r\ncontent-length: %d\r\n\r\n%b'
             % (len(LONG_BODY), LONG_BODY)),
    'after interim responses': (
        b'401', b'ok', (), CONTINUE + HINTS + CONTINUE
        + with_length(start=b'HTTP/1.1 401 Unauthorized')),
}


# ------------------------------------------------------------------------------ bodies of requests


class Unused:
    """Options of a pool that note it when the DNS is asked or a socket is opened."""

    def __init__(self):
        self.uses = []
        self.options = {'get_dns_resolver': self.get_dns_resolver, 'get_sock': self.get_sock}

    def get_dns_resolver(self, **_):
        self.uses.append('get_dns_resolver')
        raise AssertionError

    def get_sock(self, family):
        self.uses.append('get_sock')
        raise AssertionError


def of_length(length):
    """The headers that declare the length of a body."""
    return ((b'content-length', b'%d' % length),)


async def yielding(*chunks):
    """A body that yields these chunks. It waits a turn for each None, and raises exceptions."""
    for chunk in chunks:
        if chunk is None:
            await asyncio.sleep(0)
        elif isinstance(chunk, BaseException):
            raise chunk
        else:
            yield chunk


def at(server, text, method='PUT'):
    """The whole message of an error of a connection to a server."""
    return f'{method} {server.origin} (peer 127.0.0.1:{server.port}), {text}'


AS_CHUNKS = ((b'transfer-encoding', b'chunked'),)


class Body:
    """A body that notes what happens to it, and if that is in the task that called it.

    Its chunks are those of `yielding`, and `forever`, to wait for what never comes.
    """

    def __init__(self, *chunks, cleanup_error=None, swallows=False):
        self.chunks = chunks
        self.cleanup_error = cleanup_error
        self.swallows = swallows
        self.events = []
        self.waits = asyncio.Event()

    async def __call__(self):
        task = asyncio.current_task()
        try:
            for chunk in self.chunks:
                if chunk is forever:
                    self.waits.set()
                    await forever()
                elif chunk is None:
                    await asyncio.sleep(0)
                elif isinstance(chunk, Exception):
                    raise chunk
                else:
                    yield chunk
        except BaseException as error:
            self.events.append(type(error))
            if self.swallows:
                yield b'swallowed'
            raise
        finally:
            self.events.append(asyncio.current_task() is task)
            await asyncio.sleep(0)
            await asyncio.sleep(0.001)
            self.events.append('cleaned up')
            if self.cleanup_error is not None:
                raise self.cleanup_error


class Sending:
    """A body of chunks, and of functions which it awaits between them. It keeps how it ended,
    and if that was in the task that called it."""

    def __init__(self, *steps):
        self.steps = steps
        self.events = []
        self.yielded = 0

    async def __call__(self):
        task = asyncio.current_task()
        try:
            for step in self.steps:
                if callable(step):
                    await step()
                else:
                    self.yielded += 1
                    yield step
        except BaseException as error:
            self.events.append(type(error))
            raise
        finally:
            self.events.append(asyncio.current_task() is task)
            await asyncio.sleep(0)
            await asyncio.sleep(0.001)
            self.events.append('cleaned up')


CANCELLED = [asyncio.CancelledError, True, 'cleaned up']
CLOSED_IN_TURN = [GeneratorExit, True, 'cleaned up']
SWALLOWED = [True, 'cleaned up']

# More than the buffers between a client and a server that does not read can hold.
BLOCKING = bytes(10_000_000)

LARGE = b'x' * 500_000
UPLOAD = bytes(1_000_000) + b'the end'
EXPECT = ((b'expect', b'100-continue'),)


# --------------------------------------------------------------- servers on the loop of the client


class Peer:
    """The server's end of a connection."""

    def __init__(self, reader, writer, index):
        self.reader = reader
        self.writer = writer
        self.index = index
        self.sock = writer.get_extra_info('socket')
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def read_head(self) -> bytes:
        return await self.reader.readuntil(b'\r\n\r\n')

    async def read(self, length: int) -> bytes:
        return await self.reader.readexactly(length)

    async def read_body(self, head: bytes) -> bytes:
        """As it is sent: with the framing of its chunks, if it is chunked."""
        if value(head, b'transfer-encoding') == b'chunked':
            return await self.read_chunked()
        return await self.read(int(value(head, b'content-length') or 0))

    async def read_chunked(self) -> bytes:
        body = b''
        while not re.match(rb'0+\r\n', line := await self.reader.readline()):
            body += line + await self.read(int(line.partition(b';')[0], 16) + 2)
        while line != b'\r\n':
            body += line
            line = await self.reader.readline()
        return body + line

    async def send(self, *pieces: bytes) -> None:
        """Send each piece so that the client, on the same loop, sees one after the other."""
        for piece in pieces:
            if self.writer.transport.is_closing():
                raise ConnectionResetError('the client has closed the connection')
            self.writer.write(piece)
            await self.writer.drain()
            await turns(4)

    async def closed(self) -> bytes:
        """Wait until the client has closed, and return what it sent before."""
        try:
            return await self.reader.read()
        except ConnectionResetError:
            return b''

    async def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Close with a RST instead of a FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        self.writer.transport.abort()


class Server:
    """A server that runs a script, a coroutine function of a Peer, for each connection."""

    def __init__(self, script, context=None):
        self.script = script
        self.context = context
        self.peers: list[Peer] = []
        self.tasks: set[asyncio.Task] = set()
        self.failures: list[BaseException] = []

    async def __aenter__(self):
        self.server = await asyncio.start_server(
            self.serve, '127.0.0.1', 0, ssl=self.context, limit=2 ** 20)
        self.port = self.server.sockets[0].getsockname()[1]
        scheme = 'http' if self.context is None else 'https'
        self.origin = f'{scheme}://127.0.0.1:{self.port}'
        self.url = self.origin + '/'
        return self

    async def __aexit__(self, kind, error, traceback):
        self.server.close()
        await turns(5)  # what was accepted just now has a peer
        for peer in self.peers:
            peer.writer.transport.abort()
        for task in self.tasks:
            task.cancel()
        # Nobody needs to know that the client has reset a connection. But if nobody asks, the loop
        # is told of it when that is collected.
        ends = [asyncio.ensure_future(peer.writer.wait_closed()) for peer in self.peers]
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await turns(5)
        for end in ends:
            end.cancel()
        await asyncio.gather(*ends, return_exceptions=True)
        await turns(3)
        if error is None and self.failures:
            raise self.failures[0]

    async def serve(self, reader, writer):
        peer = Peer(reader, writer, len(self.peers))
        self.peers.append(peer)
        self.tasks.add(asyncio.current_task())
        try:
            await self.script(peer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client hung up, or the test is over
        except BaseException as error:
            self.failures.append(error)
        finally:
            writer.close()


class Answering:
    """A script that answers each request with the next response, and at last with the last one.

    It keeps what was asked, and over which connection. A response may be a function of the head
    and the body of the request, and None closes the connection.
    """

    def __init__(self, *responses, close_after: bool = False):
        self.responses = list(responses)
        self.close_after = close_after
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.connections: list[int] = []  # the index of the connection of each request

    async def __call__(self, peer):
        while True:
            head = await peer.read_head()
            body = await peer.read_body(head)
            self.heads.append(head)
            self.bodies.append(body)
            self.connections.append(peer.index)
            response = self.responses.pop(0) if len(self.responses) > 1 else self.responses[0]
            if callable(response):
                response = response(head, body)
            if response is None:
                return
            await peer.send(response)
            if self.close_after:
                return

    @property
    def lines(self) -> list[str]:
        """Method and target of each request."""
        return [head.partition(b' HTTP/')[0].decode() for head in self.heads]


def value(head: bytes, name: bytes) -> bytes | None:
    """The value of the only field of that name in a head, or None."""
    values = values_of(head, name)
    assert len(values) <= 1
    return values[0] if values else None


def values_of(head: bytes, name: bytes) -> list[bytes]:
    """The values of all fields of that name in a head."""
    return re.findall(rb'(?im)^' + re.escape(name) + rb': *(.*?)\r$', head)


class Uploads:
    """A script that keeps all that each connection sends until the client closes it."""

    def __init__(self):
        self.received = []

    async def __call__(self, peer):
        self.received.append(await peer.closed())

    async def body(self):
        """What came after a head over the one connection, once that is closed, or None."""
        await until(lambda: self.received)
        assert len(self.received) == 1
        head, end, body = self.received[0].partition(b'\r\n\r\n')
        return body if end else head or None


def holding(*pieces: bytes):
    """A script that sends the pieces, and then waits until the client closes."""
    async def script(peer):
        await peer.read_head()
        await peer.send(*pieces)
        script.sent += 1
        await peer.closed()
        script.closed += 1

    script.sent = script.closed = 0
    return script


async def socket_to(family, address):
    """A new socket, connected to the address."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


def connecting_to(**ports: int):
    """A `get_connection` that leads all hosts to this machine, to the port of the scheme."""
    async def get_connection(scheme, host, port):
        return await socket_to(socket.AF_INET, ('127.0.0.1', ports[scheme]))

    return get_connection


def through_unix_socket(path):
    """A `get_connection` that leads all hosts to a unix socket."""
    async def get_connection(scheme, host, port):
        return await socket_to(socket.AF_UNIX, path)

    return get_connection


class Unwanted(Exception):
    """What `unwanted` raises."""


def unwanted(*args, **kwargs):
    """A function that must not be called."""
    raise AssertionError('it must not be called')


class Streams:
    """A handler of two streams that answers requests over connections of any kind."""

    def __init__(self, context=None):
        self.context = context
        self.heads = []
        self.connections = []  # the index of the connection of each request
        self.writers = []
        self.ends = 0

    async def __call__(self, reader, writer):
        index = len(self.writers)
        self.writers.append(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                self.heads.append(await reader.readuntil(b'\r\n\r\n'))
                self.connections.append(index)
                writer.write(OK)
        self.ends += 1
        writer.close()

    async def accept(self, sock):
        """Serve a socket that is connected already."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader, self)
        await loop.connect_accepted_socket(lambda: protocol, sock, ssl=self.context)

    async def all_ended(self, but=0):
        await until(lambda: self.ends == len(self.writers) - but)


@contextlib.asynccontextmanager
async def unix_streams(streams, tmp_path):
    """A server on a unix socket. Yields a `get_connection`, and the peer that errors name."""
    path = str(tmp_path / 's')
    server = await asyncio.start_unix_server(streams, path, ssl=streams.context)
    with contextlib.closing(server):
        yield through_unix_socket(path), f' (peer {path})'


@contextlib.asynccontextmanager
async def listening(script, host='127.0.0.1'):
    """A server whose script has the two streams of a connection. It waits for all of them."""
    started = []

    async def serve(reader, writer):
        started.append(asyncio.current_task())
        await script(reader, writer)

    server = await asyncio.start_server(serve, host, 0)
    with contextlib.closing(server):
        yield server.sockets[0].getsockname()
    await asyncio.gather(*started)


def url_of_proxy(address, user=''):
    """The URL of a proxy at this address."""
    host, port = address[:2]
    return f'http://{user}[{host}]:{port}' if ':' in host else f'http://{user}{host}:{port}'


# ------------------------------------------------------------------------------ servers in threads
#
# For what must happen while the loop of the client is blocked, or must not run on it.


@contextlib.contextmanager
def deaf_server():
    """A server that accepts no connection and reads nothing. Connecting to it succeeds."""
    with socket.create_server(('127.0.0.1', 0)) as listening:
        listening.setblocking(False)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        yield Deaf(listening)


class Deaf:
    """See `deaf_server`."""

    def __init__(self, listening):
        self.listening = listening
        self.port = listening.getsockname()[1]
        self.origin = f'http://127.0.0.1:{self.port}'
        self.url = self.origin + '/'

    def accept(self):
        accepted, _ = self.listening.accept()
        accepted.setblocking(False)
        return accepted

    async def all_sent(self):
        """Read after all, until the client has closed the connection."""
        loop = asyncio.get_running_loop()
        pieces = []
        with self.accept() as accepted:
            while piece := await loop.sock_recv(accepted, 2 ** 20):
                pieces.append(piece)
        return b''.join(pieces)


def bound_to(*addresses):
    """A socket for each address, all with one port. They refuse connections until they listen."""
    while True:
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(socket.socket()) for _ in addresses]
            port = 0
            try:
                for sock, address in zip(socks, addresses, strict=True):
                    sock.bind((address, port))
                    port = sock.getsockname()[1]
            except OSError:
                continue  # somebody has that port at another of the addresses
            stack.pop_all()
            return socks


def receive_head(sock):
    """As `Peer.read_head`, of a blocking socket. What follows the head is left to be received."""
    data = b''
    while not data.endswith(b'\r\n\r\n'):
        data += receive_exactly(sock, 1)
    return data


def receive_exactly(sock, length):
    data = b''
    while len(data) < length:
        more = sock.recv(length - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def receive_end(sock):
    """Wait until the client has closed, and return what it sent before."""
    return b''.join(iter(lambda: sock.recv(65536), b''))


class ThreadServer:
    """Runs the script, a function of a blocking socket, in a thread for each connection."""

    def __init__(self, script, context=None, listener=None):
        self.script = script
        self.context = context
        self.listener = listener
        self.threads = []
        self.socks = []
        self.failures = []
        self.is_over = False

    def __enter__(self):
        if self.listener is None:
            [self.listener] = bound_to('127.0.0.1')
        self.listener.listen()
        address, self.port = self.listener.getsockname()
        scheme = 'http' if self.context is None else 'https'
        self.origin = f'{scheme}://{address}:{self.port}'
        self.url = self.origin + '/'
        self.start(self.accept)
        return self

    def __exit__(self, kind, error, traceback):
        self.is_over = True
        socket.create_connection(self.listener.getsockname()).close()
        self.threads[0].join()
        for sock in self.socks:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join()
        self.listener.close()
        if error is None and self.failures:
            raise self.failures[0]

    def start(self, function, *args):
        thread = threading.Thread(target=function, args=args)
        self.threads.append(thread)
        thread.start()

    def accept(self):
        while True:
            sock, _ = self.listener.accept()
            if self.is_over:
                sock.close()
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(PATIENCE)
            if self.context is not None:
                sock = self.context.wrap_socket(
                    sock, server_side=True, do_handshake_on_connect=False,
                    suppress_ragged_eofs=False)
            self.socks.append(sock)
            self.start(self.serve, sock)

    def serve(self, sock):
        with sock:
            try:
                if self.context is not None:
                    sock.do_handshake()
                self.script(sock)
            except (OSError, EOFError):
                pass  # the client hung up, or the test is over
            except BaseException as error:
                self.failures.append(error)


class AnsweringInThreads:
    """A script that answers all requests. It keeps the sockets that they came over."""

    def __init__(self, response=OK):
        self.response = response
        self.socks = []

    def __call__(self, sock):
        while True:
            receive_head(sock)
            self.socks.append(sock)
            sock.sendall(self.response)


@contextlib.contextmanager
def full_backlog(sock):
    """Make the socket listen, with more connections than it holds, so that connecting hangs."""
    sock.listen(0)
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(sock.getsockname())
        yield sock.getsockname()[1]


def handshake_plain(sock):
    """Answer a TLS handshake with HTTP."""
    sock.recv(65536)
    sock.sendall(b'HTTP/1.1 400 Bad Request\r\n\r\n')
    receive_end(sock)


def send_reset(sock):
    """Close a blocking socket with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    socket.socket.close(sock)


def bound_to_each(*addresses, kind=socket.SOCK_STREAM):
    """As `bound_to`, but IPv6 addresses may be among them, and the sockets may be of UDP."""
    while True:
        with contextlib.ExitStack() as stack:
            port = 0
            socks = []
            try:
                for address in addresses:
                    family = socket.AF_INET6 if ':' in address else socket.AF_INET
                    socks.append(stack.enter_context(socket.socket(family, kind)))
                    socks[-1].bind((address, port))
                    port = socks[-1].getsockname()[1]
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    pytest.skip('this machine has no IPv6')
                continue  # somebody has that port at another of the addresses
            stack.pop_all()
            return socks


def bound_to_both(*addresses):
    """Sockets of UDP and listeners of TCP for each address, all with one port."""
    while True:
        socks = bound_to_each(*addresses, kind=socket.SOCK_DGRAM)
        with contextlib.ExitStack() as stack:
            for sock in socks:
                stack.enter_context(sock)
            listeners = [stack.enter_context(socket.socket(sock.family)) for sock in socks]
            with contextlib.suppress(OSError):  # somebody has that port of TCP
                for sock, listener in zip(socks, listeners, strict=True):
                    listener.bind(sock.getsockname())
                stack.pop_all()
                return socks, listeners


def end_stream(sock):
    socket.socket.shutdown(sock, socket.SHUT_WR)


def say_goodbye(sock):
    """Without waiting for an answer: the client may be sending."""
    sock.settimeout(0)
    with contextlib.suppress(ssl.SSLError):
        sock.unwrap()
    sock.settimeout(PATIENCE)


class Website(http.server.BaseHTTPRequestHandler):
    """Answers each GET with a short page."""

    protocol_version = 'HTTP/1.1'

    def do_GET(self):
        self.send_response(200)
        self.send_header('content-length', '12')
        self.end_headers()
        self.wfile.write(b'<p>Hello</p>')

    def log_message(self, *args):
        pass


class WebServer(http.server.ThreadingHTTPServer):
    """A server with a thread for each request."""

    request_queue_size = 64
    daemon_threads = True


@contextlib.contextmanager
def serving(server):
    """Run a web server in a thread."""
    thread = threading.Thread(target=server.serve_forever, args=(0.001,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()


# --------------------------------------------------------------------------- sockets of the client


def small_sock(family, size=4096):
    """A `get_sock` whose buffer is small, so that sending soon waits for the peer to read."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
    return sock


class Sockets:
    """A `get_sock` that keeps what it returns, to know when bytes have come to the client."""

    def __init__(self, bufsize=None):
        self.bufsize = bufsize
        self.socks = []

    def __call__(self, family):
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        if self.bufsize is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.bufsize)
        self.socks.append(sock)
        return sock

    def send_to_last(self, peer, data):
        """Send, without a turn of the loop, and be sure that it has come."""
        os.write(peer.sock.fileno(), data)
        assert select.select([self.socks[-1]], [], [], PATIENCE)[0]


def small_sending_sock(family, descriptors=None):
    """As `small_sock`, but blocking until lowhaio has it."""
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    if descriptors is not None:
        descriptors.append(sock.fileno())
    return sock


class WantingToWrite(ssl.SSLSocket):
    """A TLS socket that must write before it can read on, so many times as `wants` says.

    That happens in a renegotiation, or when a certificate is asked for late and buffers are full.
    """

    wants = 0

    def recv(self, *args):
        if self.wants:
            type(self).wants -= 1
            raise ssl.SSLWantWriteError(ssl.SSL_ERROR_WANT_WRITE, 'The operation did not complete')
        return super().recv(*args)


def wanting_to_write():
    """A client's context whose sockets are `WantingToWrite`."""
    return trusting(sslsocket_class=WantingToWrite)


class Socks:
    """A `get_sock` that checks that there are never more open sockets than allowed."""

    def __init__(self, limit):
        self.limit = limit
        self.socks = []
        self.most = 0

    def __call__(self, family):
        sock = socket.socket(family)
        self.socks.append(sock)
        self.most = max(self.most, self.open())
        assert self.most <= self.limit
        return sock

    def open(self):
        return sum(sock.fileno() >= 0 for sock in self.socks)


# ------------------------------------------------------------------------------------------- names


class Nameserver:
    """A nameserver on UDP.

    Each name has a list of addresses, the name of an error, or None if it is never answered. With
    a gate, the answer waits for that. A name without AAAA records has no address of that kind, or
    the same error.
    """

    def __init__(self):
        self.answers = {}
        self.ipv6_answers = {}
        self.ttl = 300
        self.gates = {}
        self.queries = collections.Counter()
        self.ipv6_queries = collections.Counter()
        logger = dnslib.server.DNSLogger(log='-request,-reply,-truncated,-error')
        self.server = dnslib.server.DNSServer(self, '127.0.0.1', 0, logger=logger)
        self.address = self.server.server.socket.getsockname()
        self.server.start_thread()

    def resolve(self, request, handler):
        name = str(request.q.qname).rstrip('.').lower()
        kind = dnslib.QTYPE[request.q.qtype]
        if kind == 'A':
            self.queries[name] += 1
            answer = self.answers.get(name, [])
        else:
            self.ipv6_queries[name] += 1
            default = self.answers.get(name)
            answer = self.ipv6_answers.get(name, default if isinstance(default, str) else [])
        if name in self.gates:
            self.gates[name].wait(PATIENCE)
        if answer is None:
            raise dnslib.DNSError('dnslib answers nothing then')
        reply = request.reply()
        if isinstance(answer, str):
            reply.header.rcode = dnslib.RCODE.reverse[answer]
        else:
            for address in answer:
                reply.add_answer(*dnslib.RR.fromZone(f'{name}. {self.ttl} {kind} {address}'))
        return reply

    def stop(self):
        self.server.stop()
        self.server.thread.join()
        self.server.server.server_close()


@dataclasses.dataclass
class Reply:
    """What a `ScriptedNameserver` says of a name.

    Of the addresses, which may be of both kinds, those of the kind that is asked for are told. If
    there are aliases, the name is one of the first, and the last has the addresses. `alias_ttls`
    are those of the aliases, if these have others than the addresses. `late` are the
    seconds until it is sent, or None if it never is. A reply that is too long has none of the
    records, as with most nameservers, or those that fit. `datagrams` may turn its bytes into those
    of one or more others.
    """

    addresses: tuple[str, ...] = ()
    ttl: int = 300
    aliases: tuple[str, ...] = ()
    alias_ttls: tuple[int, ...] = ()
    rcode: str = 'NOERROR'
    late: float | None = 0
    is_cut_to_fit: bool = False
    datagrams: Callable[[bytes], list[bytes]] = staticmethod(lambda data: [data])

    def records(self, name, kind):
        names = [name, *self.aliases]
        ttls = self.alias_ttls or [self.ttl] * len(self.aliases)
        records = [
            dnslib.RR(alias, dnslib.QTYPE.CNAME, rdata=dnslib.CNAME(other), ttl=ttl)
            for (alias, other), ttl in zip(itertools.pairwise(names), ttls, strict=True)]
        return records + [
            dnslib.RR(names[-1], getattr(dnslib.QTYPE, kind),
                      rdata=getattr(dnslib, kind)(address), ttl=self.ttl)
            for address in self.addresses if (':' in address) == (kind == 'AAAA')]


def found(*addresses, **options):
    """The reply for a name that has these addresses."""
    return Reply(addresses, **options)


SILENCE = Reply(late=None)
SERVFAIL, REFUSED_REPLY, NXDOMAIN = (
    Reply(rcode=rcode) for rcode in ('SERVFAIL', 'REFUSED', 'NXDOMAIN'))


def one_by_one(*replies):
    """For each query the next reply, and at last always the last one."""
    left = list(replies)
    return lambda query: left.pop(0) if len(left) > 1 else left[0]


def rotating(addresses, count, **options):
    """For each query the next few of the addresses."""
    numbers = itertools.count(0, count)

    def reply(query):
        first = next(numbers)
        return found(*(addresses[(first + index) % len(addresses)] for index in range(count)),
                     **options)

    return reply


@dataclasses.dataclass
class Query:
    """What a `ScriptedNameserver` was asked: when, by the seconds since it began, the name in
    lower case, the kind, at which of its addresses, and by which protocol."""

    time: float
    name: str
    kind: str
    at: str
    by: str


class ScriptedNameserver:
    """A nameserver on the loop of the test, so that it works also if the clock stands.

    It has one port, of UDP and of TCP, at one or more addresses. It replies by `answers`, which
    may change at any time: by name, or by name and kind if the two kinds differ, to a `Reply` or a
    function of the `Query` that returns one. Other names do not exist. For the queries to an
    address that is in `answers_at`, the reply there comes before all of these. What it does with
    connections is its `tcp`: it 'answers', is 'silent', 'closes' them in the middle of a reply, or
    sends that 'in pieces'.
    """

    def __init__(self, *addresses):
        self.addresses = addresses or ('127.0.0.1',)
        self.answers = {}
        self.answers_at = {}
        self.queries = []
        self.pending = self.most_pending = 0
        self.tcp = 'answers'
        self.socks = {}
        self.listeners = {}
        self.connections = []

    async def __aenter__(self):
        self.loop = asyncio.get_running_loop()
        self.began = self.loop.time()
        socks, listeners = bound_to_both(*self.addresses)
        self.port = socks[0].getsockname()[1]
        for address, sock, listener in zip(self.addresses, socks, listeners, strict=True):
            self.listen(address, sock)
            listener.setblocking(False)
            listener.listen()
            self.loop.add_reader(listener.fileno(), self.accept, address, listener)
            self.listeners[address] = listener
        return self

    async def __aexit__(self, *error):
        for address in list(self.socks):
            self.refuse(address)
        self.refuse_tcp()
        for sock in self.connections:
            self.loop.remove_reader(sock.fileno())
            sock.close()

    def refuse_tcp(self):
        """Refuse connections from now on."""
        while self.listeners:
            _, listener = self.listeners.popitem()
            self.loop.remove_reader(listener.fileno())
            listener.close()

    def accept(self, address, listener):
        sock, _ = listener.accept()
        sock.setblocking(False)
        self.connections.append(sock)
        self.loop.add_reader(sock.fileno(), self.receive_by_tcp, address, sock)

    def receive_by_tcp(self, address, sock):
        data = b''
        with contextlib.suppress(ConnectionResetError):  # a reply was not read to its end
            data = sock.recv(65536)
        if data:
            assert len(data) == 2 + int.from_bytes(data[:2])
            self.reply(dnslib.DNSRecord.parse(data[2:]), address, sock, None)
        else:
            self.loop.remove_reader(sock.fileno())

    def listen(self, address, sock=None):
        """Reply at the address from now on, if it refused before."""
        if sock is None:
            sock = socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET,
                                 socket.SOCK_DGRAM)
            sock.bind((address, self.port))
        sock.setblocking(False)
        self.socks[address] = sock
        self.loop.add_reader(sock.fileno(), self.receive, address, sock)

    def refuse(self, address):
        """Refuse what comes to the address from now on."""
        sock = self.socks.pop(address)
        self.loop.remove_reader(sock.fileno())
        sock.close()

    def receive(self, address, sock):
        with contextlib.suppress(BlockingIOError):
            while True:
                data, peer = sock.recvfrom(65536)
                self.reply(dnslib.DNSRecord.parse(data), address, sock, peer)

    def reply(self, request, address, sock, peer):
        kind = dnslib.QTYPE[request.q.qtype]
        name = str(request.q.qname).rstrip('.').lower()
        query = Query(round(self.loop.time() - self.began, 3), name, kind, address,
                      'TCP' if peer is None else 'UDP')
        self.queries.append(query)
        reply = self.answers_at.get(
            address, self.answers.get((name, kind), self.answers.get(name, NXDOMAIN)))
        if callable(reply):
            reply = reply(query)
        if reply.late is None:
            return
        self.pending += 1
        self.most_pending = max(self.most_pending, self.pending)
        data = packed(request, reply, kind, 65535 if peer is None else 512)
        if reply.late:
            self.loop.call_later(
                reply.late, self.send, address, sock, peer, reply.datagrams(data))
        else:
            self.send(address, sock, peer, reply.datagrams(data))

    def send(self, address, sock, peer, datagrams):
        self.pending -= 1
        if peer is None:
            for data in datagrams:
                self.send_by_tcp(sock, len(data).to_bytes(2) + data)
        elif self.socks.get(address) is sock:
            for data in datagrams:
                sock.sendto(data, peer)

    def send_by_tcp(self, sock, data):
        if self.tcp == 'closes':
            sock.sendall(data[:100])
            sock.shutdown(socket.SHUT_WR)
        elif self.tcp == 'in pieces':
            for index, piece in enumerate((data[:1], data[1:50], data[50:])):
                self.loop.call_later(0.01 * index, sock.sendall, piece)
        elif self.tcp == 'answers':
            sock.sendall(data)

    def asked(self, **wanted):
        """The names and kinds of the queries that have these values."""
        return [(query.name, query.kind) for query in self.matching(**wanted)]

    def times(self, **wanted):
        """When the queries that have these values came."""
        return [query.time for query in self.matching(**wanted)]

    def matching(self, **wanted):
        return [query for query in self.queries
                if all(getattr(query, key) == value for key, value in wanted.items())]


def packed(request, reply, kind, size):
    """The bytes of a reply, of this size at most."""
    message = request.reply(ra=1, aa=0)
    message.header.rcode = getattr(dnslib.RCODE, reply.rcode)
    # The name in the case of the query, as most nameservers do. So it can be compressed.
    message.add_answer(*reply.records(str(request.q.qname).rstrip('.'), kind))
    if len(data := message.pack()) <= size:
        return data
    message.header.tc = 1
    if not reply.is_cut_to_fit:
        message.rr.clear()
        return message.pack()
    while len(data) > size:
        # A record has 28 bytes at most, but for aliases. So none is left out that fits.
        del message.rr[-max(1, (len(data) - size) // 28):]
        data = message.pack()
    return data


class NameFiles:
    """The files hosts and resolv.conf of a machine that asks a `ScriptedNameserver`, and a
    `get_dns_resolver` that reads them."""

    def __init__(self, directory, nameserver, hosts='', resolv_conf=None):
        self.hosts = directory / 'hosts'
        self.resolv_conf = directory / 'resolv.conf'
        self.changes = itertools.count(1)
        self.write_hosts(hosts)
        self.write_resolv_conf(nameservers_of(nameserver) if resolv_conf is None else resolv_conf)
        self.get_dns_resolver = functools.partial(
            lowhaio.get_dns_resolver_default, hosts=str(self.hosts),
            resolv_conf=str(self.resolv_conf), port=nameserver.port)

    def write_hosts(self, content):
        self.write(self.hosts, content)

    def write_resolv_conf(self, content):
        self.write(self.resolv_conf, content)

    def write(self, path, content):
        """Write text or bytes in place. The time of the change is another one each time, however
        little has passed."""
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        os.utime(path, (0, next(self.changes)))


def nameservers_of(nameserver):
    """The lines of resolv.conf for all addresses of a nameserver."""
    return ''.join(f'nameserver {address}\n' for address in nameserver.addresses)


def asking(*nameservers):
    """A `get_dns_resolver` that asks nameservers, each given as (seconds, address)."""
    async def get_nameservers(_, fqdn):
        for nameserver in nameservers:
            yield nameserver

    async def get_host(hosts, fqdn, qtype):
        return None

    return lambda **kwargs: aiodnsresolver.Resolver(
        **kwargs, get_nameservers=get_nameservers, get_host=get_host)


async def no_address(host):
    """What `resolving` is given for a name that does not exist."""
    raise aiodnsresolver.DnsRecordDoesNotExist()


def resolving(resolve, resolve_ipv6=no_address):
    """A `get_dns_resolver` from async functions of the host, for A and for AAAA records."""
    async def resolve_with_type(host, qtype, get_logger_adapter):
        if qtype == aiodnsresolver.TYPES.A:
            return await resolve(host)
        assert qtype == aiodnsresolver.TYPES.AAAA
        return await resolve_ipv6(host)

    async def clear_cache(get_logger_adapter):
        pass

    return lambda get_logger_adapter: (resolve_with_type, clear_cache)


def always(*addresses):
    """A `get_dns_resolver` with one answer for all names."""
    async def resolve(host):
        return [ipaddress.ip_address(address) for address in addresses]

    return resolving(resolve)


class ServerAt(Server):
    """A server at the address of a socket that is bound already."""

    def __init__(self, sock, script, context=None):
        super().__init__(script, context)
        self.sock = sock

    async def __aenter__(self):
        self.address, self.port = self.sock.getsockname()[:2]
        self.server = await asyncio.start_server(
            self.serve, sock=self.sock, ssl=self.context, limit=2 ** 20)
        return self


def local_address(peer):
    """The address at which the server was reached."""
    return peer.sock.getsockname()[0]


class ServerAtEach:
    """Answers all requests, at several addresses with one port. At some others it refuses."""

    def __init__(self, *addresses, refusing=()):
        self.addresses = [*addresses, *refusing]
        self.serving = len(addresses)
        self.heads = []
        self.used = []  # the address of each request
        self.connections = []  # the address of each connection
        self.ended = []  # the address of each connection that has ended

    async def __aenter__(self):
        async with contextlib.AsyncExitStack() as stack:
            socks = bound_to_each(*self.addresses)
            self.port = socks[0].getsockname()[1]
            for sock in socks:
                stack.callback(sock.close)
            for sock in socks[:self.serving]:
                await stack.enter_async_context(ServerAt(sock, self.answer))
            self.stack = stack.pop_all()
        return self

    async def __aexit__(self, *error):
        await self.stack.__aexit__(*error)

    async def answer(self, peer):
        address = local_address(peer)
        self.connections.append(address)
        try:
            while True:
                self.heads.append(await peer.read_head())
                self.used.append(address)
                await peer.send(OK)
        finally:
            self.ended.append(address)


def expiring(asked, *seconds):
    """A resolver of 127.0.0.1 and so on, each fresh for some of the seconds."""
    async def resolve(host):
        asked.append(host)
        now = asyncio.get_running_loop().time()
        return [aiodnsresolver.IPv4AddressExpiresAt(f'127.0.0.{number}', expires_at=now + after)
                for number, after in enumerate(seconds, 1)]

    return resolving(resolve)


# ------------------------------------------------------------------------------------ certificates


@functools.cache
def certificates_for_what_is_sent():
    """A server's context, a client's that trusts it, and the server names that were sent."""
    authority = trustme.CA()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(
        'localhost', '127.0.0.1', '::1', 'xn--bcher-kva.example', 'xn--fa-hia.example',
    ).configure_cert(server_context)
    client_context = default_of('get_ssl_context')()
    authority.configure_trust(client_context)
    server_names = []
    server_context.set_alpn_protocols(['h2', 'http/1.1'])
    server_context.sni_callback = lambda sock, name, context: server_names.append(name)
    return server_context, client_context, server_names


@functools.cache
def authority():
    """The authority of the tests."""
    return trustme.CA()


def certified(*names, version=None, **options):
    """A server's context with a certificate for the names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(*names, **options).configure_cert(context)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


@functools.cache
def context_for(*names):
    """As `certified`, but the same one each time, so a test does not change it."""
    return certified(*names)


@functools.cache
def trusting(*protocols, sslsocket_class=ssl.SSLSocket):
    """A client's context that trusts the authority of the tests."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(protocols or ['http/1.1'])
    authority().configure_trust(context)
    context.sslsocket_class = sslsocket_class
    return context


TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
TLS_VERSIONS = pytest.mark.parametrize('version', [TLS_1_2, TLS_1_3], ids=['1.2', '1.3'])


def server_context():
    """A server's context with a certificate for the hosts of most tests."""
    return context_for('127.0.0.1', 'name.test')


def context_of(scheme):
    """A server's context for the scheme, which is None for http."""
    return server_context() if scheme == 'https' else None


def without(left_out, *extensions):
    """Pairs of an extension and whether it is critical, but for one of them by its class, which
    is left out or, if it is the basic constraints, not critical."""
    return [(extension, is_critical and type(extension) is not left_out)
            for extension, is_critical in extensions
            if type(extension) is not left_out or left_out is x509.BasicConstraints]


def issued(key, subject, issuer, issuer_key, extensions):
    """The PEM of a certificate."""
    def named(name):
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(subject)).issuer_name(named(issuer)).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1)))
    for extension, is_critical in extensions:
        builder = builder.add_extension(extension, is_critical)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def private_authority(name, left_out=None):
    """The PEM of an authority as textbooks make it, and a server's context with its certificate.

    One extension may be left out.
    """
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    identifier = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())
    usage = dict.fromkeys((
        'digital_signature', 'content_commitment', 'key_encipherment', 'data_encipherment',
        'key_agreement', 'encipher_only', 'decipher_only'), False)
    root = issued(authority_key, 'Our authority', 'Our authority', authority_key, without(
        left_out, (x509.BasicConstraints(ca=True, path_length=None), True), (identifier, False),
        (x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), True)))
    leaf = issued(key, 'A server', 'Our authority', authority_key, without(
        left_out, (x509.SubjectAlternativeName([x509.DNSName(name)]), False),
        (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), False)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        file.write(leaf + key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption()))
        file.flush()
        context.load_cert_chain(file.name)
    return root.decode(), context


def strict_context(root):
    """A client's context as Python 3.13 makes it, with earlier versions, too."""
    context = ssl.create_default_context(cadata=root)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


# --------------------------------------------------------------------------------------- documents

ROOT = pathlib.Path(__file__).parent.parent


def recipe(page):
    """The program of a page of docs/recipes/, as a module. Only imports, constants and definitions
    are run."""
    module = types.ModuleType(page)
    with COMPILING:
        tree = ast.parse(python_blocks(ROOT / 'docs' / 'recipes' / f'{page}.md')[0])
        tree.body = [node for node in tree.body if isinstance(
            node,
            ast.Import | ast.ImportFrom | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            or isinstance(node, ast.Assign) and node.targets[0].id.isupper()]
        code = compile(tree, page, 'exec')
    exec(code, vars(module))
    return module


# CPython 3.11 counts the depth of a tree for all threads together, and raises a SystemError if
# another one has made a tree meanwhile.
COMPILING = threading.Lock()


def as_printed(error):
    """The last line of a traceback, without what differs between systems and tests."""
    text = f'{type(error).__name__}: {error}'.splitlines()[0].replace('0.05 seconds', '10 seconds')
    return re.sub(r' \(_ssl\.c:\d+\)|\[Errno \d+\] ', '', text)


def python_blocks(readme: pathlib.Path) -> list[str]:
    """The blocks of Python of a page."""
    return re.findall(r'(?<=^```python\n).*?(?=^```$)', readme.read_text(encoding='utf-8'),
                      re.MULTILINE | re.DOTALL)


def run_block(block: str) -> None:
    """Run a block as a program."""
    exec(compile(block, 'README.md', 'exec'), {'__name__': '__main__'})


@contextlib.contextmanager
def internet(script, *hosts: str):
    """Lead all hosts, over http and https, to servers that run the script in a thread.

    This is for what imports `Pool` from now on. Those of https have certificates for the hosts.
    """
    context = context_for(*hosts or ('*.example.com',))
    ports = {}
    started = threading.Event()
    stop = None
    failures = []

    async def serve():
        nonlocal stop
        stopped = asyncio.Event()
        stop = functools.partial(asyncio.get_running_loop().call_soon_threadsafe, stopped.set)
        async with Server(script) as http, Server(script, context) as https:
            ports.update(http=http.port, https=https.port)
            started.set()
            await stopped.wait()

    def run():
        try:
            asyncio.run(serve())
        except BaseException as error:
            failures.append(error)
            started.set()

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(lowhaio, 'Pool', functools.partial(
            Pool, get_connection=connecting_to(**ports), get_ssl_context=trusting))
        try:
            yield
        finally:
            if stop is not None:
                stop()
            thread.join()
    if failures:
        raise failures[0]
