"""Loops that the searches drive, scripted servers, and checks that nothing is left behind.

A case does the same in the same turn of the loop in each run. The loop never sleeps, and its clock
moves by the same step in each turn, so no timer takes real time. The servers are generators over
non-blocking sockets in the same thread. In each turn they run until they `yield`.
"""

import argparse
import asyncio
import contextlib
import ctypes
import fnmatch
import functools
import gc
import heapq
import itertools
import math
import os
import pathlib
import random
import socket
import ssl
import struct
import sys
import time
import traceback
import types
import warnings

# For the harness of the tests, wherever lowhaio comes from.
sys.path.insert(1, str(pathlib.Path(__file__).parents[1]))

import lowhaio  # noqa: E402
from lowhaio import HttpConnectionError  # noqa: E402
from tests.harness import StandingClock, certified, uvloop  # noqa: E402
from tests.harness import full_backlog as with_full_backlog  # noqa: E402

# A new host would begin at a random one of its addresses.
lowhaio.random_turn = int

TURN = 0.05  # seconds of the loop's clock, so that the next address is tried after five turns
LONG = 1000  # seconds of the loop's clock that no case should wait for

# A case has hung after more turns than these and more seconds of a real clock, since the kernel
# needs some time.
MAX_TURNS = 5000
MAX_SECONDS = 10

# So many broken promises of one series are reported.
MAX_REPORTS = 5


class Broken(Exception):
    """A promise that was not kept."""


def check(is_true, *what):
    if not is_true:
        raise Broken(' '.join(map(str, what)))


# ------------------------------------------------------------------------------------ loops

class Driven(StandingClock):
    """Gives an event loop a clock that is moved by hand, and notes what lowhaio leaves behind."""

    def __init__(self):
        super().__init__()
        self.registered = {}
        self.events = 0
        self.complaints = complaints = []
        # This must not be a method, because a loop of uvloop in a cycle is never collected.
        self.set_exception_handler(lambda _, context: complaints.append(
            f'{context["message"]}: {context.get("exception")!r}'))

    def create_task(self, coroutine, **kwargs):
        if not isinstance(coroutine, types.CoroutineType):
            # A hook of the loop makes such a task for a generator that was dropped.
            self.complaints.append(f'a generator was left to be closed in a task: {coroutine!r}')
        return super().create_task(coroutine, **kwargs)

    # Time

    def pass_time(self):
        """Move the clock by one turn, and run the timers that are due."""
        self.now += TURN
        while self.timers and self.timers[0][0] <= self.now:
            _, _, timer = heapq.heappop(self.timers)
            if not timer.cancelled():
                timer._run()

    def pending(self):
        """The timers of lowhaio that have not been cancelled."""
        return [timer for _, _, timer in self.timers
                if not timer.cancelled() and is_lowhaio(timer._callback)]

    # Readers and writers

    def add_reader(self, fd, callback, *args):
        self.register('reader', fd, callback)
        super().add_reader(fd, self.event, callback, *args)

    def add_writer(self, fd, callback, *args):
        self.register('writer', fd, callback)
        super().add_writer(fd, self.event, callback, *args)

    def remove_reader(self, fd):
        self.registered.pop(('reader', descriptor(fd)), None)
        return super().remove_reader(fd)

    def remove_writer(self, fd):
        self.registered.pop(('writer', descriptor(fd)), None)
        return super().remove_writer(fd)

    def register(self, kind, fd, callback):
        if is_lowhaio(callback):
            self.check_registered()
            self.registered[kind, descriptor(fd)] = inode(descriptor(fd))

    def event(self, callback, *args):
        self.events += is_lowhaio(callback)
        callback(*args)

    def check_registered(self):
        """Complain if a descriptor was closed before its reader or writer was removed.

        By now it may be the descriptor of another socket.
        """
        for (kind, fd), number in list(self.registered.items()):
            if inode(fd) != number:
                del self.registered[kind, fd]
                self.complaints.append(f'descriptor {fd} was closed before its {kind} was removed')


def is_lowhaio(callback):
    return getattr(callback, '__module__', None) == 'lowhaio'


def descriptor(fd):
    return fd if isinstance(fd, int) else fd.fileno()


def inode(fd):
    try:
        return os.fstat(fd).st_ino
    except OSError:
        return None


class DrivenAsyncio(Driven, asyncio.SelectorEventLoop):
    pass


LOOPS = {'asyncio': DrivenAsyncio}

if sys.version_info >= (3, 12):
    class Eager(DrivenAsyncio):
        """Its tasks run at once until they wait."""

        def __init__(self):
            super().__init__()
            self.set_task_factory(asyncio.eager_task_factory)

    LOOPS['eager'] = Eager

if uvloop is not None:
    class DrivenUvloop(Driven, uvloop.Loop):
        pass

    LOOPS['uvloop'] = DrivenUvloop


@contextlib.contextmanager
def turning(loop, function, is_event=False):
    """Call the function in each turn, as a callback that is due or as an event of a descriptor."""
    is_over = False

    def turn():
        if not is_over:
            if not is_event:
                loop.call_soon(turn)
            function()

    with contextlib.ExitStack() as stack:
        if is_event:
            always_readable, other = socket.socketpair()
            stack.enter_context(always_readable)
            stack.enter_context(other).send(b'.')
            loop.add_reader(always_readable.fileno(), turn)
            stack.callback(loop.remove_reader, always_readable.fileno())
        else:
            loop.call_soon(turn)
        try:
            yield
        finally:
            is_over = True


# ---------------------------------------------------------------------------------- servers

@functools.cache
def server_context(version=None):
    return certified('127.0.0.1', 'name.test', version=version)


class Gone(Exception):
    """The connection has ended."""


class Stop:
    """How a server stops, and after how many bytes that it has sent or received on the wire."""

    WAYS = ('close', 'shut', 'reset', 'silence')

    def __init__(self, way='', sent=sys.maxsize, received=sys.maxsize):
        self.way = way
        self.sent = sent
        self.received = received
        self.has_struck = False

    def strike(self, peer):
        self.has_struck = True
        if self.way == 'shut':
            try:
                peer.sock.shutdown(socket.SHUT_WR)
            except OSError:
                raise Gone from None
            while True:
                yield from peer.pull()
        while self.way == 'silence':
            yield
        if self.way == 'reset':
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        else:
            # Data that has not been read would turn the close into a reset.
            with contextlib.suppress(OSError):
                while peer.sock.recv(65536):
                    pass
        raise Gone


class Peer:
    """The server's end of a connection. A script is a generator function that gets one."""

    def __init__(self, sock, context, stop):
        self.sock = sock
        self.stop = stop
        self.sent = self.received = 0
        self.recv_bufsize = 65536
        self.data = b''
        # All that has come, without TLS.
        self.heard = bytearray()
        # The offset at which the response is whole on the wire, once its last piece is being sent.
        self.is_last = False
        self.whole_at = sys.maxsize
        self.tls = None
        if context is not None:
            self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)

    # The wire

    def pull(self):
        """Receive some bytes of the wire."""
        while True:
            try:
                data = self.sock.recv(
                    min(self.recv_bufsize, self.stop.received - self.received))
                break
            except BlockingIOError:
                yield
            except OSError:
                raise Gone from None
        if not data:
            raise Gone
        self.received += len(data)
        if self.received == self.stop.received:
            yield from self.stop.strike(self)
        if self.tls is None:
            self.take(data)
        else:
            self.incoming.write(data)

    def take(self, data):
        self.data += data
        self.heard += data

    def push(self, data):
        if self.is_last:
            self.whole_at = self.sent + len(data)
        left = memoryview(data)
        while left:
            try:
                count = self.sock.send(left[:self.stop.sent - self.sent])
            except BlockingIOError:
                yield
                continue
            except OSError:
                raise Gone from None
            left = left[count:]
            self.sent += count
            if self.sent == self.stop.sent:
                yield from self.stop.strike(self)

    # TLS, if there is any

    def start(self, pauses):
        if not self.stop.sent or not self.stop.received:
            yield from self.stop.strike(self)
        while self.tls is not None:
            try:
                self.tls.do_handshake()
                yield from self.push(self.outgoing.read())
                return
            except ssl.SSLWantReadError:
                yield from self.push(self.outgoing.read())
                yield from self.pause(pauses)
                yield from self.pull()
            except ssl.SSLError:
                raise Gone from None

    def receive(self):
        """Receive some data, decrypted if it is TLS."""
        if self.tls is None:
            yield from self.pull()
            return
        while True:
            try:
                data = self.tls.read(self.recv_bufsize)
                break
            except ssl.SSLWantReadError:
                yield from self.pull()
            except ssl.SSLError:
                raise Gone from None
        if not data:
            raise Gone
        self.take(data)

    # For scripts

    def head(self):
        while b'\r\n\r\n' not in self.data:
            yield from self.receive()
        head, _, self.data = self.data.partition(b'\r\n\r\n')
        check(head.startswith((b'GET /', b'POST /')), 'the server got', head[:60])
        return head

    def read(self, length):
        while len(self.data) < length:
            yield from self.receive()
        data, self.data = self.data[:length], self.data[length:]
        return data

    def read_some(self, most=20_000):
        """Read what has come, or what comes first."""
        if not self.data:
            yield from self.receive()
        return (yield from self.read(min(len(self.data), most)))

    def skip(self, length):
        """Read so slowly that the client has to wait."""
        while length:
            length -= len((yield from self.read(min(length, 30000))))
            yield

    def send(self, *pieces, is_last=False, pauses=2):
        """Send the pieces with pauses, so that the client may see each of them alone."""
        for index, piece in enumerate(pieces):
            self.is_last = is_last and index == len(pieces) - 1
            if self.tls is None:
                yield from self.push(piece)
            else:
                self.tls.write(piece)
                yield from self.push(self.outgoing.read())
            yield from self.pause(pauses)

    def end(self):
        """End the connection, after a close_notify if it is TLS."""
        if self.tls is not None:
            with contextlib.suppress(ssl.SSLError):
                self.tls.unwrap()
            self.is_last = True
            yield from self.push(self.outgoing.read())
        raise Gone

    def pause(self, number):
        for _ in range(number):
            yield


def together(*scripts):
    """Run scripts of one peer beside each other, a step of each in each turn, until all end."""
    running = list(scripts)
    while running:
        for script in list(running):
            try:
                next(script)
            except StopIteration:
                running.remove(script)
        if running:
            yield


class Server:
    """Runs a script for each connection, one step in each turn. The first one may stop."""

    def __init__(self, script, context=None, address='127.0.0.1', port=0, pauses=0, stop=None):
        self.script = script
        self.context = context
        self.pauses = pauses
        self.stop = stop or Stop()
        self.listener = listening(address, port)
        self.port = self.listener.getsockname()[1]
        self.peers = []
        self.running = {}

    def step(self):
        with contextlib.suppress(BlockingIOError):
            while True:
                self.accept()
        for peer, steps in list(self.running.items()):
            try:
                next(steps)
            except (StopIteration, Gone):
                del self.running[peer]
                peer.sock.close()

    def accept(self):
        sock, _ = self.listener.accept()
        self.adopt(sock)

    def adopt(self, sock):
        peer = Peer(prompt(sock), self.context, Stop() if self.peers else self.stop)
        self.peers.append(peer)
        self.running[peer] = self.serve(peer)

    def serve(self, peer):
        yield from peer.start(self.pauses)
        yield from self.script(peer)

    def close(self):
        self.listener.close()
        for peer in self.peers:
            peer.sock.close()
        self.running.clear()


def prompt(sock):
    """A socket without the delays of the kernel, which the loop's clock does not wait for."""
    socket.socket.setblocking(sock, False)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def listening(address='127.0.0.1', port=0, backlog=64):
    sock = socket.socket(socket.AF_INET6 if ':' in address else socket.AF_INET)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setblocking(False)
        sock.bind((address, port))
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock


def answering(routes):
    """A script that answers each request with its path, or as `routes` says for that path."""
    def script(peer):
        while True:
            head = yield from peer.head()
            path = head.split(b' ')[1]
            if path in routes:
                yield from routes[path](peer, head)
            else:
                yield from peer.send(ok(path))

    return script


def ok(content):
    return b'HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b' % (len(content), content)


@contextlib.contextmanager
def full_backlog(address='127.0.0.1', port=0):
    """Yield a port at which connecting hangs."""
    with listening(address, port) as listener, with_full_backlog(listener) as hanging_port:
        yield hanging_port


class SlowConnects:
    """Makes sockets whose connecting takes some turns.

    On one machine a connection is made or refused at once. So these sockets begin to connect to a
    port where that hangs, and connect to the right one when it is time.
    """

    def __init__(self, hanging_port, delays):
        self.hanging_at = '127.0.0.1', hanging_port
        self.delays = delays  # by address, in turns
        self.under_way = {}

    def get_sock(self, family, kind=None):
        sock = prompt((kind or SlowSocket)(family))
        sock.connects = self
        return sock

    def begin(self, sock, address):
        self.under_way[sock] = self.delays.get(address[0], 0), address
        socket.socket.connect(sock, self.hanging_at)

    def step(self):
        for sock, (turns_left, address) in list(self.under_way.items()):
            self.under_way[sock] = turns_left - 1, address
            if sock.fileno() < 0 or not turns_left:
                del self.under_way[sock]
            if sock.fileno() >= 0 and not turns_left:
                # Connecting to no address family ends the first attempt. Its error is taken away.
                LIBC.connect(sock.fileno(), bytes(16), 16)
                socket.socket.getsockopt(sock, socket.SOL_SOCKET, socket.SO_ERROR)
                socket.socket.connect_ex(sock, address)


LIBC = ctypes.CDLL(None)


class SlowSocket(socket.socket):
    def connect(self, address):
        self.connects.begin(self, address)


# ------------------------------------------------------------------------ the client's sockets

def observed(base, names, observe):
    """A socket class whose methods of these names call `observe(name, sock, function, args)`."""
    def method(name):
        function = getattr(base, name)

        @functools.wraps(function)
        def call(self, *args, **kwargs):
            return observe(name, self, functools.partial(function, self, **kwargs), args)

        return call

    return type('Observed' + base.__name__.capitalize(), (base,),
                {name: method(name) for name in names})


class Ledger:
    """Counts what goes over the client's sockets for a request, to check what its error tells."""

    def __init__(self):
        self.number = 0
        self.begin()

    def begin(self):
        self.number += 1
        self.sent = self.received = 0
        self.is_reused = False

    def call(self, name, sock, function, args):
        if name == 'send':
            # The request that first used the socket. For any later one, the socket is reused.
            sock.first_request = getattr(sock, 'first_request', self.number)
            self.is_reused = sock.first_request != self.number
        result = function(*args)
        if name == 'send':
            self.sent += result
        elif name == 'recv':
            self.received += len(result)
        return result

    def check(self, error, is_tls):
        if isinstance(error, HttpConnectionError):
            check(self.sent == 0, self.sent, 'bytes had left:', repr(error))
        elif not is_tls:
            # In TLS, a write that fails may have sent a part of a record, so nothing is certain.
            check(self.sent > 0, 'no byte had left:', repr(error))
        check(error.reused == self.is_reused, 'reused is', error.reused)
        check(error.response_started == (self.received > 0),
              'response_started is', error.response_started)


# ------------------------------------------------------------------------------------- cases

def run_case(loop_name, case):
    """Run `case(loop)`, a coroutine, and check that nothing is left behind."""
    before = open_descriptors()
    with asyncio.Runner(loop_factory=LOOPS[loop_name]) as runner:
        loop = runner.get_loop()
        complaints = loop.complaints
        sys.unraisablehook = lambda args: complaints.append(
            f'unraisable: {args.exc_value!r} in {args.object!r}')
        try:
            outcome = runner.run(case(loop))
            gc.collect()
        finally:
            sys.unraisablehook = sys.__unraisablehook__
        check(not complaints, '; '.join(complaints))
        check(not loop.registered, 'registered:', loop.registered)
        check(not loop.pending(), 'timers left:', loop.pending())
    del loop, runner, case
    left = {fd: target for fd, target in open_descriptors().items() if before.get(fd) != target}
    check(not left, 'descriptors left:', left)
    check_memory()
    return outcome


def open_descriptors():
    """The open descriptors and what each leads to, by which a reused number is recognised."""
    found = {}
    for name in os.listdir('/dev/fd'):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f'/dev/fd/{name}')
    return {fd: target for fd, target in found.items() if not target.startswith('/proc/')}


PASSING = (lowhaio.Acquisition, lowhaio.Connection, lowhaio.OriginBooks, lowhaio.Race,
           lowhaio.ReceivedBody, lowhaio.RequestBody, lowhaio.Steps)


def check_memory():
    gc.collect()
    left = [one for one in gc.get_objects() if isinstance(one, PASSING)]
    check(not left, 'objects left:', left)


class Watch:
    """Ends a case that hangs."""

    def __init__(self):
        self.turn = 0
        self.late_at = time.monotonic() + MAX_SECONDS
        self.has_hung = False

    def step(self):
        self.turn += 1
        if self.turn > MAX_TURNS and time.monotonic() > self.late_at:
            self.has_hung = True
            for task in asyncio.all_tasks():
                task.cancel()

    def check(self):
        check(not self.has_hung, 'hung')


class Story:
    """An `on_event` of a pool that holds what it is told to what the documentation says of it.

    It keeps no error, because that would keep what has failed.
    """

    def __init__(self):
        self.last_time = 0
        self.told = []
        # Requests and connections that have begun, and not ended.
        self.requests = set()
        self.connections = set()

    def __call__(self, event):
        name = type(event).__name__
        self.told.append(f'{name} {getattr(event, "request", "")}')
        self.check(event.time >= self.last_time, 'time goes back')
        self.last_time = event.time
        self.check(getattr(event, 'started', 0) <= event.time, 'it ended before it began')
        request = getattr(event, 'request', None)
        if name == 'RequestStarted':
            self.requests.add(request)
        elif request is not None:
            self.check(request in self.requests, 'of a request that has ended')
        if name in ('BodyEnded', 'RequestFailed'):
            self.requests.discard(request)
        if name == 'ConnectionAttempted' and event.connection is not None:
            self.connections.add(event.connection)
        elif name in ('TlsNegotiated', 'ConnectionTaken', 'ConnectionReleased',
                      'ConnectionClosed'):
            self.check(event.connection in self.connections, 'of a connection that is closed')
        if name == 'ConnectionClosed':
            self.connections.discard(event.connection)

    def end(self):
        """The pool is closed, and nothing of its requests is left."""
        self.check(not self.requests, 'requests without an end:', self.requests)
        self.check(not self.connections, 'connections without an end:', self.connections)

    def check(self, is_true, *what):
        check(is_true, *what, 'after', ', '.join(self.told[-20:]))


# ----------------------------------------------------------------------------------- command

class Series:
    """Cases that differ in a number. `run(number)` returns False if there is no such case."""

    def __init__(self, name, run):
        self.name = name
        self.run = run

    def is_one_of(self, patterns):
        parts = self.name.split('/')
        return not patterns or any(fnmatch.fnmatch(self.name, pattern) or pattern in parts
                                   for pattern in patterns)


def main(description, all_series):
    """Run the command of a search. `all_series` is a function that returns its Series."""
    args = parsed_arguments(description)
    # From here on, each collection looks only at new objects.
    warnings.simplefilter('error')
    for version in (None, ssl.TLSVersion.TLSv1_2):
        server_context(version)
    gc.collect()
    gc.freeze()
    start = time.monotonic()
    cases = broken = series_count = 0
    for series in all_series():
        if series.name.split('/')[0] not in (args.loop or LOOPS) or \
                not series.is_one_of(args.patterns):
            continue
        series_count += 1
        if args.list:
            print(series.name)
            continue
        broken_before = broken
        for number in numbers(args, series):
            try:
                if not series.run(number):
                    break
                cases += 1
            except Exception as error:
                cases += 1
                broken += 1
                report(series, number, error)
                # A case that fails does not tell whether it is the last one.
                if not args.go_on or broken - broken_before == MAX_REPORTS:
                    break
        if broken and not args.go_on:
            break
    print(f'{cases} cases of {series_count} series, every {args.every} of seed {args.seed}, '
          f'{time.monotonic() - start:.1f} s: {broken or "no"} '
          f'promise{"s" if broken > 1 else ""} broken')
    sys.exit(bool(broken))


def parsed_arguments(description):
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('patterns', nargs='*', metavar='SERIES', help=(
        'only those with this name, or with this part of it between slashes; * stands for any'))
    parser.add_argument('--list', action='store_true', help='only list the series')
    parser.add_argument('--loop', action='append', choices=LOOPS, help='all, unless given')
    parser.add_argument('--case', type=int, metavar='NUMBER', help='only this one of each series')
    parser.add_argument('--every', type=int, default=1, metavar='N',
                        help='only about one of N cases; which ones depends on the seed')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--go-on', action='store_true', help='after a broken promise, too')
    return parser.parse_args()


def numbers(args, series):
    if args.case is not None:
        return [args.case]
    # At least one case of a series is run once the series has begun. So a small share must also
    # leave out whole series.
    chance = random.Random(f'{args.seed} {series.name}')
    step = math.isqrt(args.every)
    if chance.randrange(args.every // step):
        return []
    return itertools.count(chance.randrange(step), step)


def report(series, number, error):
    print(f'BROKEN in case {number} of {series.name}: {error}')
    while error is not None:
        if not isinstance(error, Broken):
            print(''.join(traceback.format_exception(error, chain=False, limit=-5)))
        error = error.__cause__
    print(f'repeat it: python fuzz/{os.path.basename(sys.argv[0])} {series.name} --case {number}',
          flush=True)
