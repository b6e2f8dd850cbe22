"""Makes a server stop after each byte that it sends or receives: close, reset, or fall silent.

A series is LOOP/EXCHANGE/WAY, and the number of a case in it is an offset on the wire. It counts
from the start of the response, or, if the way ends in -received, from the start of what the server
receives. In TLS it may be anywhere in a record, and in exchanges called `length` in the handshake,
too. The ways are: `close` the connection; `shut` it down for sending, and read on; `reset` it; and
`silence`, in which socket_timeout passes by a clock that does not wait.

The caller gets the whole right body or an HttpError, and never a short or a wrong body. What was
read before the error is the beginning of it. A request that was not sent whole gets only an answer
of 300 or above, or one that is the last of its connection and is followed by its end. The answer
says that the request was not sent whole. After 101, the same is true of what both ends send. An
error tells truly whether a byte had left, whether one had come, and whether the connection was
reused. Nothing is left behind, nothing spins meanwhile, and the next request is answered. Exits
with 1 if a promise was not kept.
"""

import asyncio
import contextlib
import functools
import itertools
import socket
import ssl

from scripted import (
    LONG,
    LOOPS,
    Broken,
    Ledger,
    Series,
    Server,
    Stop,
    Watch,
    answering,
    check,
    main,
    observed,
    ok,
    prompt,
    run_case,
    server_context,
    turning,
)

from lowhaio import HttpConnectionClosedError, HttpDataError, HttpError, Pool
from tests.harness import trusting, turns

MAX_EVENTS = 60  # of lowhaio's readers and writers, while it waits for a silent server

ENDS = ('close', 'shut')  # the ways that end the connection without a reset

TLS_1_2 = ssl.TLSVersion.TLSv1_2


# -------------------------------------------------------------------------------- exchanges

class Exchange:
    """One request, whose server stops."""
    expected = b'abcdef'
    sends = 0  # the length of the request's content
    # Whether an early response is 300 or above, and whether it is the last of its connection.
    is_refusing = is_last = False
    is_to_the_end = False
    is_tls = False
    version = None

    def __init__(self, pieces=(), **changes):
        self.pieces = pieces
        for name, value in changes.items():
            assert hasattr(type(self), name), name
            setattr(self, name, value)

    def answer(self, peer, head):
        *before, last = self.pieces
        yield from peer.send(*before)
        yield from peer.send(last, is_last=not self.is_to_the_end)
        if self.is_to_the_end:
            yield from peer.end()

    def url(self, port, path='/'):
        return f'http{"s" if self.is_tls else ""}://127.0.0.1:{port}{path}'

    async def prepare(self, case):
        pass

    def request(self, case):
        return case.request(b'GET', self.url(case.server.port))


class Reused(Exchange):
    """A request on a reused connection."""

    async def prepare(self, case):
        check(await read(await self.request_to(case, '/before')) == b'/before', 'the first')

    def request_to(self, case, path):
        return case.request(b'GET', self.url(case.server.port, path))


class Upload(Exchange):
    """An upload that is longer than the buffers of the kernel."""
    length = 400_000

    @property
    def sends(self):
        return self.length

    def answer(self, peer, head):
        yield from peer.skip(self.length)
        yield from super().answer(peer, head)

    pauses = 2  # how many turns pass after the first chunk of the generator

    async def body(self, case):
        case.is_open = True
        try:
            yield b'x' * 10
            await turns(self.pauses)
            yield b'x' * (self.length - 10)
        finally:
            case.is_open = False

    def request(self, case):
        return case.request(b'POST', self.url(case.server.port), headers=self.fields(),
                            body=self.body, body_args=(case,))

    def fields(self):
        return ((b'content-length', b'%d' % self.length),)


class Early(Upload):
    """The server refuses before it has received everything, and does not read on."""
    is_refusing = True

    def answer(self, peer, head):
        yield from peer.read(10)
        yield from Exchange.answer(self, peer, head)
        yield from peer.pause(LONG)


class Welcome(Upload):
    """The server answers below 300 before it has received everything, and reads on."""
    pauses = 20

    def answer(self, peer, head):
        yield from peer.read(10)
        yield from Exchange.answer(self, peer, head)
        yield from peer.skip(self.length - 10)


class Duplex(Welcome):
    """The server sends a piece of its response between two that it reads."""
    pauses = 2

    def answer(self, peer, head):
        yield from peer.read(10)
        yield from peer.send(*self.pieces[:-1], pauses=0)
        yield from peer.skip(self.length // 2)
        yield from peer.send(self.pieces[-1], is_last=True)
        yield from peer.skip(self.length - self.length // 2 - 10)


class Switched(Duplex):
    """After 101, one task of the client sends, and another one reads."""
    is_to_the_end = True
    sends = 0  # with the request itself

    def answer(self, peer, head):
        yield from peer.send(*self.pieces[:-1])
        yield from peer.skip(self.length // 2)
        yield from peer.send(self.pieces[-1])
        yield from peer.skip(self.length - self.length // 2)
        yield from peer.end()

    async def request(self, case):
        response = await case.request(
            b'POST', self.url(case.server.port),
            headers=((b'connection', b'upgrade'), (b'upgrade', b'x')))
        case.sender = asyncio.ensure_future(self.send(response[2]))
        return response

    async def send(self, body):
        try:
            await body.send(b'x' * 10)
            await turns(2)
            await body.send(b'x' * (self.length - 10))
        except HttpError as error:
            return error


class Expecting(Upload):
    length = 20

    def fields(self):
        return (*super().fields(), (b'expect', b'100-continue'))

    def answer(self, peer, head):
        yield from peer.send(b'HTTP/1.1 100 Continue\r\n\r\n')
        yield from super().answer(peer, head)


LENGTH = (b'HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n', b'abc', b'def')
CHUNKED = (b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n', b'2\r\nab\r\n4;x=y\r\ncd',
           b'ef\r\n0\r\na: b\r\n', b'c: d\r\n\r\n')
TO_THE_END = (b'HTTP/1.1 200 OK\r\n\r\n', b'abc', b'def')
INTERIMS = (b'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n',
            b'HTTP/1.1 103 E\r\n\r\n' + LENGTH[0], b'abc', b'def')
SWITCHED = (b'HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n', b'abc', b'def')
LAST = (b'HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\n', b'abc', b'def')
REFUSAL = (b'HTTP/1.1 413 No\r\ncontent-length: 6\r\nconnection: close\r\n\r\n', b'abc', b'def')

KINDS = {
    'length': (Exchange, {'pieces': LENGTH}),
    'at-once': (Exchange, {'pieces': (b''.join(LENGTH),)}),
    'empty': (Exchange, {'pieces': (ok(b''),), 'expected': b''}),
    'chunked': (Exchange, {'pieces': CHUNKED}),
    'to-the-end': (Exchange, {'pieces': TO_THE_END, 'is_to_the_end': True}),
    'interims': (Exchange, {'pieces': INTERIMS}),
    'reused': (Reused, {'pieces': CHUNKED}),
    'upload': (Upload, {'pieces': LENGTH}),
    'early': (Early, {'pieces': REFUSAL}),
    'welcome': (Welcome, {'pieces': LENGTH}),
    'welcome-last': (Welcome, {'pieces': LAST, 'is_last': True}),
    'duplex': (Duplex, {'pieces': LENGTH}),
    'duplex-chunked': (Duplex, {'pieces': CHUNKED}),
    'duplex-last': (Duplex, {'pieces': LAST, 'is_last': True}),
    'switched': (Switched, {'pieces': SWITCHED}),
    'expecting': (Expecting, {'pieces': LENGTH}),
}
EXCHANGES = {
    name + suffix: kind(**changes, **more)
    for name, (kind, changes) in KINDS.items()
    for suffix, more in (('', {}), ('-tls', {'is_tls': True}),
                         ('-tls-1.2', {'is_tls': True, 'version': TLS_1_2}))}

# Only every so many bytes of what the server receives are tried, since they matter less.
RECEIVED_STEP = 997


# ------------------------------------------------------------------------------------ cases

# The ledger of the case that runs now.
LEDGER = Ledger()
ObservedSocket = observed(socket.socket, ('send', 'recv'), LEDGER.call)
ObservedSSLSocket = observed(ssl.SSLSocket, ('send', 'recv'), LEDGER.call)


def get_sock(is_tls, family):
    return prompt((socket.socket if is_tls else ObservedSocket)(family))


async def read(response, received=None):
    """Read the body. What has come of it so far is in `received`."""
    received = bytearray() if received is None else received
    _, _, body = response
    async for chunk in body:
        received += chunk
    return bytes(received)


class Case:
    def __init__(self, exchange, stop):
        self.exchange = exchange
        self.stop = stop
        self.watch = Watch()
        self.is_open = False  # the generator
        self.received = bytearray()
        # The task that sends after 101.
        self.sender = None

    async def run(self, loop):
        """Run the case. Returns False if the server ended before it was to stop."""
        self.loop = loop
        exchange = self.exchange
        self.server = Server(answering({b'/': self.answer}),
                             server_context(exchange.version) if exchange.is_tls else None,
                             stop=self.stop)
        self.request, close = Pool(
            max_connections=1, keep_alive_timeout=LONG,
            get_ssl_context=functools.partial(
                trusting, sslsocket_class=ObservedSSLSocket),
            get_sock=functools.partial(get_sock, exchange.is_tls))
        with contextlib.closing(self.server), turning(loop, self.step):
            try:
                await self.run_with_server()
                await close()
                await turns(3)
            except asyncio.CancelledError:
                self.watch.check()
                raise
        return self.stop.has_struck

    def answer(self, peer, head):
        self.answered_at = peer.sent
        return self.exchange.answer(peer, head)

    def step(self):
        self.loop.check_registered()
        self.watch.step()
        self.server.step()
        self.loop.pass_time()

    async def run_with_server(self):
        try:
            await self.exchange.prepare(self)
        except HttpError:
            # For TLS this is not checked, because its offsets are not exact.
            check(self.stop.has_struck, 'failed before the stop')
        if self.stop.has_struck:
            await self.check_next()
            return
        LEDGER.begin()
        events = self.loop.events
        result = error = None
        try:
            response = await self.exchange.request(self)
            result = await read(response, self.received)
            self.check_sent(response)
        except HttpError as caught:
            error = caught
        check(not self.is_open, 'the generator is open')
        if self.sender is not None:
            await self.check_sender()
        check(self.exchange.expected.startswith(self.received), 'read', self.received)
        check(self.loop.events - events <= MAX_EVENTS or self.stop.way != 'silence',
              self.loop.events - events, 'events of readers and writers')
        try:
            if error is None:
                self.check_result(result)
            else:
                self.check_error(error)
        except Broken as broken:
            raise broken from error
        del error
        if not self.stop.has_struck:
            self.peer.stop = Stop()
        check(asyncio.current_task().cancelling() == 0, 'cancelling()')
        await self.check_next()

    async def check_sender(self):
        error = await self.sender
        check(error is None or self.stop.has_struck, 'the sender failed:', repr(error))
        if error is not None:
            check(isinstance(error, HttpConnectionClosedError), 'the sender got', repr(error))
        heard = bytes(self.peer.heard).partition(b'\r\n\r\n')[2]
        check(len(heard) <= self.exchange.length and not heard.strip(b'x'), 'heard', heard[:60])

    def check_sent(self, response):
        exchange = self.exchange
        _, _, body = response
        if not body.request_sent:
            is_ended = self.stop.way != 'silence'
            check(exchange.is_refusing or exchange.is_last and self.is_whole() and is_ended,
                  'an answer to a part of a request')
        elif not exchange.is_tls:
            check(LEDGER.sent > exchange.sends, 'sent whole, by', LEDGER.sent, 'bytes')

    def is_whole(self):
        return self.peer.sent >= self.peer.whole_at

    @property
    def peer(self):
        return self.server.peers[0]

    def is_endless(self):
        """Whether any end of the connection, without close_notify, is the end of the body."""
        return self.exchange.is_to_the_end and not self.exchange.is_tls

    def check_result(self, result):
        if self.is_endless():
            content = b''.join(self.exchange.pieces)[:self.peer.sent].partition(b'\r\n\r\n')[2]
            check(self.stop.way not in ('reset', 'silence') or not self.stop.has_struck,
                  'no end:', result)
            check(result == content, 'got', result, 'of', content)
        else:
            check(self.is_whole(), 'got', result, 'of a part')
            check(result == self.exchange.expected, 'got', result)

    def check_error(self, error):
        check(self.stop.has_struck, 'failed without a stop:', repr(error))
        LEDGER.check(error, self.exchange.is_tls)
        if self.is_endless():
            head = len(self.exchange.pieces[0])
            # After 101, the sending may be the first to notice an end.
            check(self.peer.sent < head or self.stop.way in ('reset', 'silence')
                  or self.sender is not None, 'failed with a whole head:', repr(error))
        else:
            # Over TLS, sending may fail after an end, or by a reset.
            is_unsent = isinstance(self.exchange, Welcome) and not (
                self.exchange.is_last and self.stop.way in ENDS and not self.exchange.is_tls)
            check(not self.is_whole() or self.stop.way == 'reset' or is_unsent,
                  'failed with a whole response:', repr(error))
        if self.stop.way == 'silence':
            check(isinstance(error.__cause__, TimeoutError), 'no time-out:', repr(error.__cause__))
        elif isinstance(error, HttpDataError):
            check(isinstance(error, HttpConnectionClosedError), 'got', repr(error))

    async def check_next(self):
        url = self.exchange.url(self.server.port, '/next')
        try:
            result = await read(await self.request(b'GET', url))
        except HttpError as error:
            # A peer that is silent after a whole response cannot be told from a good one.
            if not (error.reused and self.stop.has_struck and self.stop.way == 'silence'):
                raise Broken('the next request failed') from error
            result = await read(await self.request(b'GET', url))
        check(result == b'/next', 'the next request got', result)


@functools.cache
def first_offset(loop_name, name):
    """The offset at which the response begins, or in one exchange the handshake.

    The length of a handshake differs by some bytes from one connection to the next.
    """
    exchange = EXCHANGES[name]
    case = Case(exchange, Stop())
    run_case(loop_name, case.run)
    return 0 if name.startswith('length') else \
        max(case.answered_at - 10, 0) if exchange.is_tls else case.answered_at


def run(loop_name, name, way, number):
    if way.endswith('-received'):
        stop = Stop(way.removesuffix('-received'), received=number * RECEIVED_STEP)
    else:
        stop = Stop(way, sent=first_offset(loop_name, name) + number)
    return run_case(loop_name, Case(EXCHANGES[name], stop).run)


def all_series():
    for loop_name, (name, exchange), way in itertools.product(
            LOOPS, EXCHANGES.items(), Stop.WAYS):
        if isinstance(exchange, Switched) and way == 'silence':
            continue  # there is no end to that
        ways = [way, way + '-received'] if isinstance(exchange, Upload) else [way]
        for one in ways:
            yield Series(f'{loop_name}/{name}/{one}',
                         functools.partial(run, loop_name, name, one))


if __name__ == '__main__':
    main(__doc__, all_series)
