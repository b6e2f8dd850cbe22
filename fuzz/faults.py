"""Makes each system call of an exchange fail, block, or do only a part, one after the other.

A series is LOOP/EXCHANGE/single. The number of a case in it is that of a fault, and each call of
the exchange has several faults. In case 0 all calls do only a part. A case of
LOOP/EXCHANGE/several has two or three faults, which are drawn at random from its number.

Whatever a call does, only an HttpError is raised. If a call only blocks, or does only a part,
there is no error at all. An error tells truly whether a byte had left, whether one had come, and
whether the connection was reused. An answer is the right one. Nothing is left behind, and the next
request gets the one place in the pool and its own answer. Exits with 1 if a promise was not kept.
"""

import asyncio
import contextlib
import errno
import functools
import itertools
import operator
import os
import random
import socket
import ssl
from ipaddress import ip_address

import aiodnsresolver
from scripted import (
    LONG,
    LOOPS,
    Broken,
    Ledger,
    Series,
    Server,
    SlowConnects,
    SlowSocket,
    Watch,
    answering,
    check,
    full_backlog,
    main,
    observed,
    ok,
    prompt,
    run_case,
    server_context,
    turning,
)

from lowhaio import HttpError, Pool, buffered
from tests.harness import trusting, turns

TLS_1_2 = ssl.TLSVersion.TLSv1_2


# ----------------------------------------------------------------------------------- faults

PART = 'part'  # only one byte is sent or received
ERRNOS = (errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT, errno.ENETUNREACH, errno.ENOBUFS)
TLS_ERRORS = (ssl.SSLError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
# So many of the first calls do only a part, where all are to. More would take seconds a case.
MAX_PARTS = 2000

TLS_WANTS = (ssl.SSLWantReadError, ssl.SSLWantWriteError)
# These are no failures, because the call can be made again or continued.
HARMLESS = {PART, BlockingIOError, *TLS_WANTS}


def possible_faults(name, is_tls):
    """The faults that can happen to a call. Numbers are error codes of the system."""
    if name == 'getsockopt':
        return [errno.ECONNREFUSED]
    if name in ('setblocking', 'getpeername', 'close'):
        return [errno.ENOBUFS, errno.EIO]
    if name in ('get_sock', 'get_ssl_context', 'get_connection'):
        return [errno.EMFILE, ValueError]
    faults = [*ERRNOS]
    if is_tls:
        faults += [*TLS_ERRORS, *TLS_WANTS]
    elif name in ('send', 'recv'):
        faults.append(BlockingIOError)
    if name == 'do_handshake':
        faults.append(ssl.SSLCertVerificationError)
    if name in ('send', 'recv'):
        faults.append(PART)
    return faults


class Plan:
    """What happens to the calls of a case, which it counts.

    `numbers` are those of the calls that have a fault. `choose` picks one of the possible ones.
    """

    def __init__(self, numbers=(), choose=None, is_partial=False):
        self.numbers = numbers
        self.choose = choose
        self.is_partial = is_partial
        self.calls = []
        self.struck = []
        self.is_on = True
        self.ledger = Ledger()

    def is_good(self):
        """Nothing has happened that keeps the two ends from going on."""
        return all(fault in HARMLESS for _, fault in self.struck)

    def call(self, name, sock, function, args):
        if not self.is_on:
            return function(*args)
        call = name, isinstance(sock, ssl.SSLSocket)
        self.calls.append(call)
        if len(self.calls) - 1 in self.numbers:
            fault = self.choose(possible_faults(*call))
            self.struck.append((name, fault))
            function = functools.partial(self.strike, fault, name, sock, function)
        elif self.is_partial and len(self.calls) <= MAX_PARTS and name in ('send', 'recv'):
            function = functools.partial(self.strike, PART, name, sock, function)
        return self.ledger.call(name, sock, function, args)

    def strike(self, fault, name, sock, function, *args):
        if name == 'close':
            function()
        if fault is PART:
            return function(1 if name == 'recv' else args[0][:1])
        if name == 'getsockopt':
            return fault  # SO_ERROR is an error code
        if fault is ssl.SSLWantReadError and name == 'recv' and sock.pending():
            return function(*args)  # TLS wants to read only if it holds nothing
        if isinstance(fault, int):
            raise OSError(fault, os.strerror(fault))
        error = fault('made up')
        # The errors that ssl makes in C have this attribute.
        error.reason = None
        raise error


# The plan of the case that runs now.
plan = Plan()


def observe(name, sock, function, args):
    return plan.call(name, sock, function, args)


SOCKET_CALLS = (
    'connect', 'send', 'recv', 'getsockopt', 'setblocking', 'getpeername', 'close')
ObservedSocket = observed(socket.socket, SOCKET_CALLS, observe)
ObservedSlowSocket = observed(SlowSocket, SOCKET_CALLS, observe)
ObservedSSLSocket = observed(ssl.SSLSocket, (
    'do_handshake', 'send', 'recv', 'unwrap', 'close'), observe)


def get_sock(family):
    return plan.call('get_sock', None, lambda: prompt(ObservedSocket(family)), ())


def get_slow_sock(connects, family):
    return plan.call(
        'get_sock', None, lambda: connects.get_sock(family, ObservedSlowSocket), ())


def get_ssl_context():
    get = functools.partial(trusting, sslsocket_class=ObservedSSLSocket)
    return plan.call('get_ssl_context', None, get, ())


# -------------------------------------------------------------------------------- exchanges

class Exchange:
    response = ok(b'/')
    expected = b'/'
    has_facts = True  # whether it is known what its errors must tell
    delays = None  # how many turns connecting takes, by address; None for none
    is_to_the_end = False
    is_tls = False
    version = None

    def __init__(self, **changes):
        for name, value in changes.items():
            assert hasattr(type(self), name), name
            setattr(self, name, value)

    def options(self):
        return {}

    def routes(self):
        return {b'/': self.answer}

    def answer(self, peer, head):
        yield from peer.send(self.response)
        if self.is_to_the_end:
            yield from peer.end()

    def url(self, case, path='/', host='127.0.0.1'):
        return f'http{"s" if self.is_tls else ""}://{host}:{case.server.port}{path}'

    async def get(self, case, path='/', host='127.0.0.1'):
        plan.ledger.begin()
        _, _, body = await case.request(b'GET', self.url(case, path, host))
        return await buffered(body)

    async def client(self, case):
        return await self.get(case)


EXCHANGES = {}


def exchange(name, **changes):
    def add(kind):
        for suffix, more in (('', {}), ('-tls', {'is_tls': True}),
                             ('-tls-1.2', {'is_tls': True, 'version': TLS_1_2})):
            EXCHANGES[name + suffix] = kind(**changes, **more)
        return kind

    return add


@exchange('length', response=ok(b'abcdef'), expected=b'abcdef')
@exchange('empty', response=ok(b''), expected=b'')
@exchange('chunked', response=b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n'
          b'2\r\nab\r\n4\r\ncdef\r\n0\r\na: b\r\n\r\n', expected=b'abcdef')
@exchange('to-the-end', response=b'HTTP/1.1 200 OK\r\n\r\nabcdef', expected=b'abcdef',
          is_to_the_end=True)
@exchange('interim', response=b'HTTP/1.1 103 E\r\n\r\n' + ok(b'/'))
class Get(Exchange):
    pass


@exchange('in-pieces')
class InPieces(Exchange):
    expected = b'abcd'

    def answer(self, peer, head):
        yield from peer.send(b'HTTP/1.1 200 OK\r\n', b'content-length: 4\r\n\r\n', b'ab', b'cd')


@exchange('reused')
class Reused(Exchange):
    expected = b'/a/b'

    async def client(self, case):
        return await self.get(case, '/a') + await self.get(case, '/b')


@exchange('closed-early')
class ClosedEarly(InPieces):
    """A body is closed before its end, and another request is made."""
    expected = b'/b'

    async def client(self, case):
        plan.ledger.begin()
        _, _, body = await case.request(b'GET', self.url(case))
        check(b'abcd'.startswith(await anext(body)), 'a wrong chunk')
        await body.aclose()
        return await self.get(case, '/b')


@exchange('three-at-once')
class Limited(Exchange):
    """Several requests wait for the one place. A fault ends only the one that it happens to."""
    expected = [b'/a', b'/b', b'/c']
    has_facts = False

    def options(self):
        return {'max_connections_per_origin': 1, 'pool_timeout': LONG}

    async def client(self, case):
        answers = await asyncio.gather(
            *(self.get(case, path.decode()) for path in self.expected), return_exceptions=True)
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        check(len(errors) <= len(plan.struck), 'failed:', errors)
        for answer, expected in zip(answers, self.expected, strict=True):
            check(answer == expected or isinstance(answer, HttpError), 'got', repr(answer))
        if errors:
            raise errors[0]
        return answers


@exchange('upload')
@exchange('upload-expecting', is_expecting=True)
class Upload(Exchange):
    is_expecting = False
    chunks = (b'a' * 10, b'b' * 100_000, b'', b'c' * 10)
    length = 100_020

    @property
    def expected(self):
        return b'%d' % sum(map(sum, self.chunks))

    def answer(self, peer, head):
        if self.is_expecting:
            yield from peer.send(b'HTTP/1.1 100 Continue\r\n\r\n')
        data = yield from peer.read(self.length)
        yield from peer.send(ok(b'%d' % sum(data)))

    async def body(self, case):
        case.is_open = True
        try:
            for index, chunk in enumerate(self.chunks):
                case.given += chunk
                yield chunk
                await self.wait(case, index)
        finally:
            try:
                await asyncio.sleep(0)
            finally:
                case.is_open = False

    async def wait(self, case, index):
        await asyncio.sleep(0)

    def request_fields(self):
        fields = [(b'content-length', b'%d' % self.length)]
        return [*fields, (b'expect', b'100-continue')] if self.is_expecting else fields

    async def client(self, case):
        plan.ledger.begin()
        _, _, body = await case.request(b'POST', self.url(case), headers=self.request_fields(),
                                        body=self.body, body_args=(case,))
        async for chunk in body:
            case.received += chunk
        self.check(body)
        return bytes(case.received)

    def check(self, body):
        pass


@exchange('early')
@exchange('early-expecting', is_expecting=True)
class Early(Upload):
    """The server answers early and reads on. A connection is reused only after a whole request."""
    expected = b'no'

    def answer(self, peer, head):
        if not self.is_expecting:
            yield from peer.read(10)
        yield from peer.send(b'HTTP/1.1 413 No\r\ncontent-length: 2\r\n\r\nno')
        yield from peer.read(self.length if self.is_expecting else self.length - 10)

    async def wait(self, case, index):
        await turns(0 if index else 10)


@exchange('welcome', fields=b'')
@exchange('welcome-last', fields=b'connection: close\r\n')
class Welcome(Upload):
    """The server answers early, below 300, and whoever reads goes on with the sending.

    The content ends once the request is sent whole, unless the response is the last one of its
    connection, which ends after it.
    """
    fields = b''
    expected = b'ok'

    def answer(self, peer, head):
        yield from peer.read(10)
        yield from peer.send(
            b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n' + self.fields + b'\r\nok')
        yield from peer.read(self.length - 10)
        if self.fields:
            yield from peer.end()

    async def wait(self, case, index):
        await turns(0 if index else 20)

    def check(self, body):
        # A fault and the end of the connection may come together: a read that finds a reset may
        # report an end.
        check(body.request_sent or self.fields and plan.struck, 'an answer to a part')
        check(not body.request_sent or self.is_tls or plan.ledger.sent > self.length, 'sent whole')


@exchange('duplex')
@exchange('duplex-chunked', is_chunked=True)
@exchange('duplex-waits', is_waiting=True)
class Duplex(Welcome):
    """The server sends back what comes."""
    chunks = (b'a' * 10, b'b' * 50_000, b'', b'c' * 10)
    length = 50_020
    expected = b''.join(chunks)
    is_chunked = False
    is_waiting = False  # whether the generator waits for what the reader gets

    def answer(self, peer, head):
        data = yield from peer.read(10)
        yield from peer.send(b'HTTP/1.1 200 OK\r\n' + (
            b'transfer-encoding: chunked\r\n\r\n' if self.is_chunked else
            b'content-length: %d\r\n\r\n' % self.length))
        left = self.length - 10
        while True:
            yield from peer.send(b'%x\r\n%b\r\n' % (len(data), data) if self.is_chunked else data)
            if not left:
                break
            data = yield from peer.read_some()
            left -= len(data)
        if self.is_chunked:
            yield from peer.send(b'0\r\n\r\n')

    async def wait(self, case, index):
        await asyncio.sleep(0)
        while self.is_waiting and len(case.received) < len(case.given) and plan.is_good():
            await asyncio.sleep(0)


@exchange('duplex-unread')
class DuplexUnread(Duplex):
    """The server sends all before it reads."""
    chunks = (b'a' * 10, b'b' * 200_000, b'', b'c' * 10)
    length = 200_020
    expected = b''.join(chunks)

    def answer(self, peer, head):
        yield from peer.read(10)
        yield from peer.send(b'HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n' % self.length)
        for start in range(0, self.length, 50_000):
            yield from peer.send(self.expected[start:start + 50_000])
        yield from peer.skip(self.length - 10)


@exchange('switched')
@exchange('switched-two-tasks', has_two_tasks=True)
class Switched(Duplex):
    """After 101, the server sends back what comes."""
    chunks = (b'a' * 10, b'b' * 10_000, b'c')
    expected = b''.join(chunks)
    has_two_tasks = False

    def answer(self, peer, head):
        yield from peer.send(b'HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n')
        while True:
            yield from peer.send((yield from peer.read_some()))

    async def client(self, case):
        plan.ledger.begin()
        _, _, body = await case.request(b'POST', self.url(case), headers=(
            (b'connection', b'upgrade'), (b'upgrade', b'x')))
        if self.has_two_tasks:
            results = await asyncio.gather(
                self.send(case, body), self.read(case, body), return_exceptions=True)
            for result in results:
                if result is not None:
                    raise result
        else:
            await self.send(case, body)
            await self.read(case, body)
        await body.aclose()
        return bytes(case.received)

    async def send(self, case, body):
        for chunk in self.chunks:
            case.given += chunk
            await body.send(chunk)

    async def read(self, case, body):
        while len(case.received) < len(self.expected):
            case.received += await anext(body)


@exchange('slow-connect', delays={'127.0.0.1': 3})
class SlowConnect(Exchange):
    pass


@exchange('two-addresses')
@exchange('two-slow-addresses', delays={'127.0.0.2': 3, '127.0.0.1': 3})
@exchange('two-slower-addresses', delays={'127.0.0.2': 8, '127.0.0.1': 2})
class TwoAddresses(Exchange):
    """Nobody listens at the first address."""

    def options(self):
        async def resolve(host, record_type, get_logger_adapter):
            if record_type == aiodnsresolver.TYPES.AAAA:
                raise aiodnsresolver.DnsRecordDoesNotExist
            return [ip_address('127.0.0.2'), ip_address('127.0.0.1')]

        async def clear_cache(get_logger_adapter):
            pass

        return {'get_dns_resolver': lambda get_logger_adapter: (resolve, clear_cache)}

    async def client(self, case):
        return await self.get(case, host='name.test')


@exchange('get-connection')
class GetConnection(Exchange):
    def options(self):
        async def get_connection(scheme, host, port):
            sock = plan.call('get_connection', None,
                             lambda: prompt(ObservedSocket(socket.AF_INET)), ())
            socket.socket.connect_ex(sock, (host, port))
            await asyncio.sleep(0)
            return sock

        return {'get_connection': get_connection}


# ------------------------------------------------------------------------------------- cases

class Case:
    def __init__(self, an_exchange):
        self.exchange = an_exchange
        self.watch = Watch()
        self.is_open = False  # the generator
        # What it has yielded, or the client sent, and what the client got.
        self.given = bytearray()
        self.received = bytearray()

    async def run(self, loop):
        self.loop = loop
        context = server_context(self.exchange.version) if self.exchange.is_tls else None
        self.server = Server(answering(self.exchange.routes()), context)
        self.running = [self.server]
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.closing(self.server))
            self.request, close = Pool(**{
                'max_connections': 1, 'keep_alive_timeout': LONG, 'socket_timeout': 20,
                'get_ssl_context': get_ssl_context, 'get_sock': self.get_sock(stack),
                **self.exchange.options()})
            stack.enter_context(turning(loop, self.step))
            try:
                await self.run_with_server()
                await close()
                await turns(3)
            except asyncio.CancelledError:
                self.watch.check()
                raise

    def get_sock(self, stack):
        if self.exchange.delays is None:
            return get_sock
        hanging_port = stack.enter_context(full_backlog())
        connects = SlowConnects(hanging_port, self.exchange.delays)
        self.running.append(connects)
        return functools.partial(get_slow_sock, connects)

    def step(self):
        self.loop.check_registered()
        self.watch.step()
        for running in self.running:
            running.step()
        self.loop.pass_time()

    async def run_with_server(self):
        try:
            result = await self.exchange.client(self)
        except HttpError as error:
            self.check_error(error)
        except Broken:
            raise
        except Exception as error:
            raise Broken('escaped:', repr(error)) from error
        else:
            check(result == self.exchange.expected, 'got', repr(result))
        check(asyncio.current_task().cancelling() == 0, 'cancelling()')
        check(not self.is_open, 'the generator is open')
        await turns(3)
        self.check_both()
        plan.is_on = False
        check(await self.exchange.get(self, '/next') == b'/next', 'the next got another answer')

    def check_both(self):
        """What came was sent, at both ends."""
        if self.received:
            check(self.exchange.expected.startswith(self.received), 'read:', self.received[:60])
        for peer in self.server.peers:
            head, _, heard = bytes(peer.heard).partition(b'\r\n\r\n')
            check(not head.startswith(b'POST') or self.given.startswith(heard),
                  'the server got', len(heard), 'bytes, of', len(self.given))

    def check_error(self, error):
        try:
            # After a made-up want-read, the client waits for data that never comes.
            is_in_vain = isinstance(error.__cause__, TimeoutError) and any(
                fault is ssl.SSLWantReadError for _, fault in plan.struck)
            check(is_in_vain or any(fault not in HARMLESS for _, fault in plan.struck),
                  'failed without a failure:', repr(error))
            if self.exchange.has_facts:
                plan.ledger.check(error, self.exchange.is_tls)
        except Broken as broken:
            raise broken from error


def run_plan(loop_name, an_exchange, new_plan):
    global plan
    plan = new_plan
    try:
        run_case(loop_name, Case(an_exchange).run)
    except Broken as broken:
        raise Broken(broken, 'after', plan.struck) from broken.__cause__


@functools.cache
def calls_without_fault(loop_name, exchange_name):
    run_plan(loop_name, EXCHANGES[exchange_name], Plan())
    return plan.calls


def run_single(loop_name, exchange_name, number):
    """Run the case of one fault. Case 0 has none, but all calls do only a part."""
    faults = [(call, index)
              for call, kind in enumerate(calls_without_fault(loop_name, exchange_name))
              for index in range(len(possible_faults(*kind)))]
    if number > len(faults):
        return False
    call, index = faults[number - 1] if number else (-1, 0)
    run_plan(loop_name, EXCHANGES[exchange_name],
             Plan([call], operator.itemgetter(index), is_partial=not number))
    check(plan.struck or not number, 'the fault did not come')
    return True


def run_several(loop_name, exchange_name, number):
    if number >= SEVERAL:
        return False
    chance = random.Random(f'{number} {exchange_name}')
    calls = range(len(calls_without_fault(loop_name, exchange_name)))
    run_plan(loop_name, EXCHANGES[exchange_name],
             Plan(chance.sample(calls, min(len(calls), chance.choice((2, 3)))), chance.choice,
                  is_partial=chance.random() < 0.1))
    return True


SEVERAL = 1000  # how many cases each series has


def all_series():
    for loop_name, name in itertools.product(LOOPS, EXCHANGES):
        yield Series(f'{loop_name}/{name}/single',
                     functools.partial(run_single, loop_name, name))
        yield Series(f'{loop_name}/{name}/several',
                     functools.partial(run_several, loop_name, name))


if __name__ == '__main__':
    main(__doc__, all_series)
