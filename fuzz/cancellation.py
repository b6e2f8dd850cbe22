"""Ends requests in every way, and in each turn of the loop until they would complete.

A series is LOOP/SCENARIO/END/ORDER, and the number of a case in it is that of the turn.

Afterwards nothing is left of the request: no descriptor, reader, writer, timer or waiter, and
nothing that the loop complains about. No cancellation is lost, and only the code that made one
takes it back. The next request gets the one place in the pool. Exits with 1 if a promise was not
kept.
"""

import asyncio
import contextlib
import functools
import gc
import itertools
import logging
import pathlib
import socket
import ssl
import struct
import sys
import tempfile
import threading
import weakref

import aiodnsresolver
from scripted import (
    LONG,
    LOOPS,
    TURN,
    Broken,
    Series,
    Server,
    SlowConnects,
    Stop,
    Story,
    Watch,
    answering,
    check,
    full_backlog,
    main,
    ok,
    run_case,
    server_context,
    turning,
)

import lowhaio
from lowhaio import HttpConnectionError, HttpDataError, HttpError, Pool, buffered
from tests.harness import trusting, turns

SEND_BUFFER = 32768  # of the client; a smaller one makes the kernel wait for its delayed ACKs

MAX_NUMBER = 500  # of turns that a client takes

TLS_1_2 = {'is_tls': True, 'version': ssl.TLSVersion.TLSv1_2}


# -------------------------------------------------------------------------------- scenarios
#
# Each scenario has servers, options of a pool, and a client: an async function that is called with
# the case, makes the requests, and returns what they got. `expected` is what it returns if nothing
# ends it.

class Scenario:
    expected = b'/'
    errors = ()  # what the client may raise without having been ended
    cancels_itself = False  # whether its task is cancelled from inside, as by the real resolver
    idle = 1  # how many connections may be left
    is_tls = False
    version = None
    pauses = 0  # how many turns pass between the steps of the server's handshake
    ends = frozenset()  # the ends of this scenario that others do not have

    def __init__(self, **changes):
        for name, value in changes.items():
            assert hasattr(type(self), name), name
            setattr(self, name, value)

    @contextlib.contextmanager
    def servers(self, case):
        context = server_context(self.version) if self.is_tls else None
        case.server = Server(answering(self.routes(case)), context, pauses=self.pauses)
        with contextlib.closing(case.server):
            yield [case.server]

    def routes(self, case):
        return {}

    def options(self, case):
        return {}

    def url(self, case, path='/', host='127.0.0.1'):
        scheme = 'https' if self.is_tls else 'http'
        return f'{scheme}://{host}:{case.server.port}{path}'

    async def prepare(self, case):
        """Do what has to be done before the client starts, or what goes on beside it."""

    async def client(self, case):
        _, _, body = await case.request(b'GET', self.url(case))
        return await buffered(body)

    async def others(self, case):
        """Check what goes on beside the client. It must work whatever happens to the client."""


SCENARIOS = {}


def scenario(name, **changes):
    def add(kind):
        assert name not in SCENARIOS, name
        SCENARIOS[name] = kind(**changes)
        return kind

    return add


# Connecting

@scenario('get')
@scenario('get-tls', is_tls=True)
@scenario('get-tls-1.2', **TLS_1_2)
@scenario('handshake-stalled', is_tls=True, pauses=6)
@scenario('handshake-stalled-1.2', pauses=6, **TLS_1_2)
class Get(Scenario):
    pass


@scenario('reused')
@scenario('reused-tls', is_tls=True)
class Reused(Scenario):
    async def prepare(self, case):
        check(await Scenario.client(self, case) == b'/', 'the first request')


@scenario('refused')
class Refused(Scenario):
    errors = (HttpConnectionError,)

    @contextlib.contextmanager
    def servers(self, case):
        with super().servers(case) as servers, socket.socket() as sock:
            sock.bind(('127.0.0.1', 0))
            case.port = sock.getsockname()[1]
            yield servers

    async def client(self, case):
        await case.request(b'GET', f'http://127.0.0.1:{case.port}/')


@scenario('connect-hanging')
class Hanging(Refused):
    @contextlib.contextmanager
    def servers(self, case):
        with Scenario.servers(self, case) as servers, full_backlog() as case.port:
            yield servers

    def options(self, case):
        return {'socket_timeout': 12 * TURN}


# Names

class Named(Scenario):
    addresses = ('127.0.0.1',)
    ipv6_addresses = ()

    async def client(self, case):
        _, _, body = await case.request(b'GET', self.url(case, host='name.test'))
        return await buffered(body)

    def options(self, case):
        async def clear_cache(get_logger_adapter):
            await asyncio.sleep(0)

        resolve = functools.partial(self.resolve, case)
        return {'get_dns_resolver': lambda get_logger_adapter: (resolve, clear_cache)}

    async def resolve(self, case, host, record_type, get_logger_adapter):
        await self.ask(case)
        addresses = self.addresses if record_type == aiodnsresolver.TYPES.A else \
            self.ipv6_addresses
        if not addresses:
            raise aiodnsresolver.DnsRecordDoesNotExist
        expires_at = asyncio.get_running_loop().time() + LONG
        return [aiodnsresolver.IPv6AddressExpiresAt(address, expires_at) if ':' in address else
                aiodnsresolver.IPv4AddressExpiresAt(address, expires_at) for address in addresses]

    async def ask(self, case):
        await turns(2)


@scenario('dns')
@scenario('dns-tls', is_tls=True)
class Dns(Named):
    pass


@scenario('dns-fails')
class DnsFails(Named):
    addresses = ()
    errors = (HttpConnectionError,)


@scenario('dns-cleans-up')
class DnsCleansUp(Named):
    """The resolver waits for futures, and awaits in its `finally`."""
    async def ask(self, case):
        loop = asyncio.get_running_loop()
        for delay in (2 * TURN, 0):
            waiter = loop.create_future()
            timer = loop.call_later(delay, lowhaio.wake, waiter)
            try:
                await waiter
            finally:
                timer.cancel()
                await asyncio.sleep(0)


@scenario('dns-times-out')
class DnsTimesOut(Named):
    """The resolver has time-outs of its own, made as asyncio's are, and goes on after them."""
    cancels_itself = True

    async def ask(self, case):
        for _ in range(2):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(3 * TURN):
                    await asyncio.Event().wait()


class Nameserver:
    """A nameserver that answers queries for A records over UDP, or is silent."""

    def __init__(self, is_silent):
        self.is_silent = is_silent
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.sock.bind(('127.0.0.1', 0))
        self.address = self.sock.getsockname()
        self.close = self.sock.close

    def step(self):
        with contextlib.suppress(BlockingIOError, ConnectionError):
            query, address = self.sock.recvfrom(512)
            if not self.is_silent:
                self.sock.sendto(self.answer(query), address)

    def answer(self, query):
        question = query[12:]
        is_ipv4 = question[-4:-2] == b'\0\1'
        record = b'\xc0\x0c\0\1\0\1' + struct.pack('!LH4B', 60, 4, 127, 0, 0, 1)
        head = query[:2] + struct.pack('!5H', 0x8180, 1, is_ipv4, 0, 0)
        return head + question + (record if is_ipv4 else b'')


@scenario('aiodnsresolver')
@scenario('aiodnsresolver-two-silent', silent=2)
@scenario('aiodnsresolver-all-silent', silent=2, answering=0)
@scenario('aiodnsresolver-too-late', silent=2, answering=0, socket_timeout=12 * TURN)
class RealResolver(Named):
    cancels_itself = True
    silent = 0
    answering = 1
    socket_timeout = LONG
    errors = (HttpConnectionError,)

    @contextlib.contextmanager
    def servers(self, case):
        with super().servers(case) as servers, contextlib.ExitStack() as stack:
            case.nameservers = [
                stack.enter_context(contextlib.closing(Nameserver(index < self.silent)))
                for index in range(self.silent + self.answering)]
            yield servers + case.nameservers

    def options(self, case):
        async def get_nameservers(_, fqdn):
            for nameserver in case.nameservers:
                yield (8 * TURN if nameserver.is_silent else LONG), nameserver.address

        async def get_host(hosts, fqdn, qtype):
            return None

        return {'socket_timeout': self.socket_timeout,
                'get_dns_resolver': functools.partial(
                    aiodnsresolver.Resolver, get_nameservers=get_nameservers, get_host=get_host)}


class Shared(Scenario):
    """Three requests need the same name. The one that asks, or one that waits, is ended."""
    place = 0
    idle = 3

    def options(self, case):
        return {**super().options(case), 'max_connections': None}

    async def prepare(self, case):
        case.tasks = []
        for index in range(3):
            if index == self.place:
                case.start()
            else:
                case.tasks.append(asyncio.ensure_future(self.client(case)))

    async def others(self, case):
        for answer in await asyncio.gather(*case.tasks):
            check(answer == b'/', 'another got', answer)


@scenario('dns-first-of-three', place=0)
@scenario('dns-second-of-three', place=1)
@scenario('dns-third-of-three', place=2)
class SharedDns(Shared, Named):
    pass


@scenario('aiodnsresolver-first-of-three', place=0, silent=1)
@scenario('aiodnsresolver-second-of-three', place=1, silent=1)
class SharedRealResolver(Shared, RealResolver):
    errors = ()


# Racing connects

class Racing(Named):
    """A race in which the other addresses listen at the same port as 127.0.0.1."""
    hanging = ()
    refusing = ()

    @contextlib.contextmanager
    def servers(self, case):
        while True:
            with super().servers(case) as servers, contextlib.ExitStack() as stack:
                try:
                    servers += self.more_servers(case, stack)
                except OSError:
                    continue  # another process has the port there
                yield servers
                return

    def more_servers(self, case, stack):
        servers = []
        for address in self.addresses + self.ipv6_addresses:
            if address in self.hanging:
                stack.enter_context(full_backlog(address, case.server.port))
            elif address not in (*self.refusing, '127.0.0.1'):
                server = Server(answering({}), case.server.context, address, case.server.port)
                servers.append(stack.enter_context(contextlib.closing(server)))
        return servers


HANGING = {'addresses': ('127.0.0.2',), 'hanging': ('127.0.0.2',)}
REFUSED = {'addresses': ('127.0.0.2',), 'refusing': ('127.0.0.2',)}


@scenario('race-after-hanging', **HANGING | {'addresses': ('127.0.0.2', '127.0.0.1')})
@scenario('race-after-hanging-tls', is_tls=True,
          **HANGING | {'addresses': ('127.0.0.2', '127.0.0.1')})
@scenario('race-after-two-hanging', addresses=('127.0.0.2', '127.0.0.3', '127.0.0.1'),
          hanging=('127.0.0.2', '127.0.0.3'))
@scenario('race-after-refused', **REFUSED | {'addresses': ('127.0.0.2', '127.0.0.1')})
@scenario('race-ipv6-after-hanging', ipv6_addresses=('::1',), **HANGING)
@scenario('race-ipv6-after-refused', ipv6_addresses=('::1',), **REFUSED)
@scenario('race-ipv6-only', addresses=(), ipv6_addresses=('::1',))
class Race(Racing):
    pass


TWO = {'addresses': ('127.0.0.2', '127.0.0.1')}


@scenario('connect-slow', delays={'127.0.0.1': 4})
@scenario('connect-slow-tls', delays={'127.0.0.1': 4}, is_tls=True)
@scenario('connect-slow-refused', delays={'127.0.0.2': 4}, errors=(HttpConnectionError,),
          **REFUSED)
@scenario('race-slow-first', delays={'127.0.0.2': 7, '127.0.0.1': 20}, **TWO)
@scenario('race-slow-second', delays={'127.0.0.2': 20, '127.0.0.1': 2}, **TWO)
@scenario('race-slow-both', delays={'127.0.0.2': 8, '127.0.0.1': 2}, **TWO)
@scenario('race-slow-both-tls', delays={'127.0.0.2': 8, '127.0.0.1': 2}, is_tls=True, **TWO)
@scenario('race-slow-refused', delays={'127.0.0.2': 7, '127.0.0.1': 4}, **REFUSED | TWO)
class SlowRace(Racing):
    """Connecting takes some turns. If it takes fewer than five, there is no second attempt."""
    delays = {}

    @contextlib.contextmanager
    def servers(self, case):
        with super().servers(case) as servers, full_backlog() as hanging_port:
            case.connects = SlowConnects(hanging_port, self.delays)
            yield [*servers, case.connects]

    def options(self, case):
        return {**super().options(case), 'get_sock': case.connects.get_sock}


@scenario('race-slow-ipv6', ipv6_addresses=('::1',), **HANGING)
@scenario('race-slow-ipv6-fails', socket_timeout=30 * TURN, errors=(HttpConnectionError,),
          **HANGING)
@scenario('race-slow-ipv6-too-late', socket_timeout=18 * TURN, errors=(HttpConnectionError,),
          ipv6_addresses=('::1',), **HANGING)
class SlowIpv6(Racing):
    """The lookup of more addresses takes some turns, and so does its cleaning up."""
    socket_timeout = LONG

    def options(self, case):
        return {**super().options(case), 'socket_timeout': self.socket_timeout}

    async def ask(self, case):
        try:
            await asyncio.sleep(6 * TURN)
        finally:
            await asyncio.sleep(0)


@scenario('race-aiodnsresolver')
class RaceRealResolver(RealResolver):
    """Connecting hangs. The real resolver looks up AAAA, and its first server is silent."""
    silent = 1

    @contextlib.contextmanager
    def servers(self, case):
        with super().servers(case) as servers, full_backlog() as case.port:
            yield servers

    def options(self, case):
        return {**super().options(case), 'socket_timeout': 40 * TURN}

    async def client(self, case):
        await case.request(b'GET', f'http://name.test:{case.port}/')


# A and AAAA records, whose questions are asked beside each other

class Kinds(Racing):
    """The question of each kind takes some turns, and fails or is answered."""
    ipv6_addresses = ('::1',)
    ipv4_turns = ipv6_turns = 2
    failing = ()  # the kinds whose questions fail
    cleanup = 0
    is_swallowing = False  # whether the resolver goes on after a cancellation
    socket_timeout = LONG

    def options(self, case):
        return {**super().options(case), 'socket_timeout': self.socket_timeout}

    async def resolve(self, case, host, record_type, get_logger_adapter):
        kind = record_type.name
        try:
            await self.wait(self.ipv4_turns if kind == 'A' else self.ipv6_turns)
        finally:
            await turns(self.cleanup)
        if kind in self.failing:
            raise aiodnsresolver.DnsError(f'no {kind}')
        return await super().resolve(case, host, record_type, get_logger_adapter)

    async def wait(self, number):
        if self.is_swallowing:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(number * TURN)
            await turns(2)
        else:
            await asyncio.sleep(number * TURN)

    async def ask(self, case):
        pass


@scenario('dns-a-slow', ipv4_turns=9, ipv6_turns=12)
@scenario('dns-a-slow-and-cleans-up', ipv4_turns=9, ipv6_turns=12, cleanup=2)
@scenario('dns-a-slow-and-swallows', ipv4_turns=9, ipv6_turns=12, is_swallowing=True)
@scenario('dns-a-slower', ipv4_turns=40)
@scenario('dns-a-slower-and-cleans-up', ipv4_turns=40, cleanup=2)
@scenario('dns-a-slower-and-swallows', ipv4_turns=40, is_swallowing=True)
@scenario('dns-a-fails', failing=('A',))
@scenario('dns-a-fails-late', ipv4_turns=8, ipv6_turns=6, failing=('A',), cleanup=1)
@scenario('dns-a-fails-aaaa-silent', failing=('A',), ipv6_turns=LONG, cleanup=1,
          errors=(HttpConnectionError,))
@scenario('dns-both-fail', failing=('A', 'AAAA'), ipv4_turns=7, ipv6_turns=4,
          errors=(HttpConnectionError,))
@scenario('dns-both-too-late', ipv4_turns=LONG, ipv6_turns=LONG, socket_timeout=11 * TURN,
          cleanup=1, errors=(HttpConnectionError,))
@scenario('race-ipv6-given-up', ipv6_turns=LONG, errors=(HttpConnectionError,), **REFUSED)
@scenario('race-ipv6-given-up-and-cleans-up', ipv6_turns=LONG, cleanup=2,
          errors=(HttpConnectionError,), **REFUSED)
class TwoKinds(Kinds):
    pass


# Lookups that requests share, or wait for

class OfThree(Shared, Kinds):
    """As Shared, but the others may fail, too."""

    async def others(self, case):
        for answer in await asyncio.gather(*case.tasks, return_exceptions=True):
            check(answer == b'/' or isinstance(answer, self.errors), 'another got', repr(answer))


@scenario('dns-a-slow-first-of-three', place=0, ipv4_turns=9, ipv6_turns=12)
@scenario('dns-a-slow-second-of-three', place=1, ipv4_turns=9, ipv6_turns=12)
@scenario('dns-fails-first-of-three', place=0, failing=('A', 'AAAA'),
          errors=(HttpConnectionError,))
@scenario('dns-fails-second-of-three', place=1, failing=('A', 'AAAA'),
          errors=(HttpConnectionError,))
@scenario('dns-too-late-first-of-three', place=0, ipv4_turns=LONG, ipv6_turns=LONG, cleanup=1,
          socket_timeout=9 * TURN, errors=(HttpConnectionError,))
@scenario('dns-too-late-second-of-three', place=1, ipv4_turns=LONG, ipv6_turns=LONG, cleanup=1,
          socket_timeout=9 * TURN, errors=(HttpConnectionError,))
class SharedKinds(OfThree):
    pass


@scenario('dns-turn-first-of-three', place=0)
@scenario('dns-turn-second-of-three', place=1)
@scenario('dns-turn-third-of-three', place=2)
@scenario('dns-turn-a-slow-second-of-three', place=1, ipv4_turns=7)
class Turn(OfThree):
    """Three names, of which only one is asked for at once."""

    def options(self, case):
        case.hosts = itertools.cycle(('a.test', 'b.test', 'c.test'))
        return {**super().options(case), 'max_lookups': 1}

    async def client(self, case):
        _, _, body = await case.request(b'GET', self.url(case, host=next(case.hosts)))
        return await buffered(body)


@scenario('stale-fails-first-of-three', place=0, failing=('A', 'AAAA'))
@scenario('stale-fails-second-of-three', place=1, failing=('A', 'AAAA'))
@scenario('stale-silent-first-of-three', place=0, ipv4_turns=LONG, ipv6_turns=LONG, cleanup=1)
@scenario('stale-silent-second-of-three', place=1, ipv4_turns=LONG, ipv6_turns=LONG)
@scenario('stale-failed-first-of-three', place=0, ipv4_turns=LONG, ipv6_turns=LONG, failures=1)
class Stale(OfThree):
    """The addresses are no longer fresh, and there are no others to be had."""
    failures = 0  # how many lookups have failed before

    def options(self, case):
        case.is_first = True
        return {**super().options(case), 'min_ttl': 0, 'max_stale': LONG}

    async def resolve(self, case, host, record_type, get_logger_adapter):
        if not case.is_first:
            return await super().resolve(case, host, record_type, get_logger_adapter)
        expires_at = asyncio.get_running_loop().time() + TURN / 2
        return [aiodnsresolver.IPv4AddressExpiresAt('127.0.0.1', expires_at)]

    async def prepare(self, case):
        check(await self.client(case) == b'/', 'the first request')
        case.is_first = False
        for _ in range(self.failures):
            check(await self.client(case) == b'/', 'a request before')
            await turns(30)
        await turns(2)
        await super().prepare(case)


# The default resolver

class ScriptedNameserver(Nameserver):
    """What it does is told by a word: it is silent, refuses, fails, cuts off, or answers.

    It knows names that begin with `name`, and those in b.test.
    """

    def __init__(self, manner, host, port):
        self.manner = manner
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.close = self.sock.close
        try:
            self.sock.bind((host, port))
        except OSError:
            self.close()
            raise
        self.address = self.sock.getsockname()
        self.is_silent = manner == 'silent'
        if manner == 'refuses':
            self.close()

    def step(self):
        if self.manner != 'refuses':
            super().step()

    def answer(self, query):
        reply = super().answer(query)
        name = query[13:].lower()
        if self.manner == 'fails':
            return reply[:3] + b'\x82' + reply[4:]
        if self.manner == 'cuts off':
            # There is nobody at its port for TCP.
            return reply[:2] + b'\x83' + reply[3:]
        if not name.startswith(b'name') and b'\1b\4test' not in name:
            return reply[:3] + b'\x83' + reply[4:6] + bytes(6) + query[12:]
        return reply


@scenario('resolver', manners=['answers'])
@scenario('resolver-second', manners=['silent', 'answers'])
@scenario('resolver-after-refusing', manners=['refuses', 'answers'])
@scenario('resolver-after-failing', manners=['fails', 'answers'])
@scenario('resolver-silent', manners=['silent', 'silent'], errors=(HttpConnectionError,))
@scenario('resolver-too-late', manners=['silent', 'silent'], errors=(HttpConnectionError,),
          socket_timeout=26 * TURN)
@scenario('resolver-fails', manners=['fails'], errors=(HttpConnectionError,))
@scenario('resolver-cuts-off', manners=['cuts off'])
@scenario('resolver-search', manners=['answers'], host='api')
@scenario('resolver-search-second', manners=['silent', 'answers'], host='api')
@scenario('resolver-search-in-vain', manners=['fails'], host='api', errors=(HttpConnectionError,))
class LocalResolver(Named):
    manners = ()
    host = 'name.test'
    socket_timeout = LONG

    @contextlib.contextmanager
    def servers(self, case):
        with super().servers(case) as servers, contextlib.ExitStack() as stack:
            directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
            case.nameservers = self.nameservers(stack)
            hosts = directory.joinpath('hosts')
            hosts.write_text('')
            resolv_conf = directory.joinpath('resolv.conf')
            resolv_conf.write_text(''.join(
                f'nameserver {nameserver.address[0]}\n' for nameserver in case.nameservers
            ) + 'search a.test b.test\noptions timeout:1 attempts:1\n')
            case.get_dns_resolver = functools.partial(
                lowhaio.get_dns_resolver_default, hosts=str(hosts), resolv_conf=str(resolv_conf),
                port=case.nameservers[0].address[1])
            yield servers + case.nameservers

    def nameservers(self, stack):
        while True:
            with contextlib.ExitStack() as nameservers, contextlib.suppress(OSError):
                port = 0
                made = []
                for number, manner in enumerate(self.manners, 1):
                    made.append(ScriptedNameserver(manner, f'127.0.0.{number}', port))
                    nameservers.callback(made[-1].close)
                    port = made[0].address[1]
                stack.push(nameservers.pop_all())
                return made

    def options(self, case):
        return {'socket_timeout': self.socket_timeout, 'get_dns_resolver': case.get_dns_resolver}

    async def client(self, case):
        _, _, body = await case.request(b'GET', self.url(case, host=self.host))
        return await buffered(body)


@scenario('resolver-first-of-three', place=0, manners=['silent', 'answers'])
@scenario('resolver-second-of-three', place=1, manners=['silent', 'answers'])
class SharedResolver(Shared, LocalResolver):
    pass


# Places

@scenario('place-freed')
@scenario('connection-handed', is_ended=True)
@scenario('connection-handed-tls', is_ended=True, is_tls=True)
class Waiting(Scenario):
    """The client waits for the only place, which becomes free after some turns."""
    is_ended = False

    def routes(self, case):
        def held(peer, head):
            yield from peer.send(ok(b'held')[:-1])
            while not case.is_released:
                yield
            yield from peer.send(b'd')

        return {b'/held': held}

    async def prepare(self, case):
        case.is_released = False
        _, _, body = await case.request(b'GET', self.url(case, '/held'))
        case.holder = asyncio.ensure_future(self.hold(case, body))

    async def hold(self, case, body):
        await turns(6)
        if self.is_ended:
            case.is_released = True
            check(await buffered(body) == b'held', 'the holder')
        else:
            await body.aclose()

    async def others(self, case):
        await case.holder


@scenario('two-wait')
@scenario('two-wait-ended', is_ended=True)
class TwoWait(Waiting):
    """Another request waits behind the client."""

    async def prepare(self, case):
        await super().prepare(case)
        case.start()
        await asyncio.sleep(0)
        case.other = asyncio.ensure_future(self.client(case))

    async def others(self, case):
        await super().others(case)
        check(await case.other == b'/', 'the other')


@scenario('other-origin-waits')
@scenario('other-origin-waits-ended', is_ended=True)
class OtherOrigin(Waiting):
    """The client waits for a place that a request to another origin has."""

    @contextlib.contextmanager
    def servers(self, case):
        with super().servers(case) as servers:
            case.second = Server(answering({}))
            with contextlib.closing(case.second):
                yield [*servers, case.second]

    async def client(self, case):
        _, _, body = await case.request(b'GET', f'http://127.0.0.1:{case.second.port}/')
        return await buffered(body)


@scenario('place-too-late')
class PlaceTooLate(Waiting):
    """pool_timeout passes, perhaps in the very turn in which the client gets the place."""
    errors = (HttpConnectionError,)

    def options(self, case):
        return {'pool_timeout': 6 * TURN}


# Sending

def get_small_sock(family):
    sock = lowhaio.get_sock_default(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    return sock


def get_large_sock(family):
    sock = lowhaio.get_sock_default(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 ** 20)
    return sock


class Sending(Scenario):
    length = 300_000

    def routes(self, case):
        def upload(peer, head):
            yield from peer.skip(self.length)
            yield from peer.send(ok(b'/'))

        return {b'/': upload}

    def options(self, case):
        return {'get_sock': get_small_sock}

    async def chunks(self, case):
        yield b'a' * 10
        await asyncio.sleep(0)
        yield b'b' * (self.length - 20)
        yield b'c' * 10

    async def client(self, case):
        _, _, body = await case.request(
            b'POST', self.url(case), body=self.chunks, body_args=(case,), headers=self.fields())
        return await buffered(body)

    def fields(self):
        return ((b'content-length', b'%d' % self.length),)


@scenario('send-body')
@scenario('send-body-tls', is_tls=True)
@scenario('send-body-tls-1.2', **TLS_1_2)
@scenario('send-small-body', length=30)
class SendBody(Sending):
    pass


@scenario('send-at-once')
@scenario('send-at-once-tls', is_tls=True)
class SendAtOnce(Sending):
    """A body that is sent without waiting, but is too long to be sent in one turn."""
    length = 600_000

    def options(self, case):
        return {'get_sock': get_large_sock}

    def routes(self, case):
        def upload(peer, head):
            yield from peer.read(self.length)
            yield from peer.send(ok(b'/'))

        return {b'/': upload}

    async def chunks(self, case):
        for _ in range(60):
            yield b'a' * (self.length // 60)


@scenario('send-head-blocked', length=0)
@scenario('send-head-blocked-tls', length=0, is_tls=True)
class SendHead(Sending):
    def fields(self):
        return ((b'x', b'x' * 200_000),)

    async def chunks(self, case):
        await asyncio.sleep(0)
        return
        yield


@scenario('generator-waits')
@scenario('generator-waits-tls', is_tls=True)
@scenario('generator-waits-and-cleans-up', cleanup=2)
@scenario('generator-blocked', length=300_000)
@scenario('generator-blocked-tls', length=300_000, is_tls=True)
@scenario('generator-blocked-and-cleans-up', length=300_000, cleanup=2)
class GeneratorWaits(Sending):
    """The generator waits. Whatever happens, it is closed."""
    length = 20
    cleanup = 0

    async def chunks(self, case):
        case.is_open = True
        try:
            await asyncio.sleep(0)
            yield b'a' * 10
            await asyncio.sleep(4 * TURN)
            yield b'b' * (self.length - 10)
            await asyncio.sleep(TURN)
        finally:
            await self.clean_up(case)

    async def clean_up(self, case):
        try:
            await turns(self.cleanup)
        finally:
            case.is_open = False

    async def others(self, case):
        check(not case.is_open, 'the generator is open')


@scenario('generator-fails-to-close', length=300_000)
class GeneratorFailsToClose(GeneratorWaits):
    async def clean_up(self, case):
        await super().clean_up(case)
        if isinstance(sys.exception(), GeneratorExit):
            raise ValueError('made up')


class Swallowing(Sending):
    """The generator goes on after cancellations. What it yields in the end is not sent."""
    length = 30

    async def chunks(self, case):
        case.given += b'a' * 10
        yield b'a' * 10
        for length in (self.length - 20, 10):
            chunk = await self.wait(case) * length
            case.given += chunk
            yield chunk

    async def wait(self, case):
        letter = b'b'
        for delay in (20 * TURN, 0):
            try:
                await asyncio.sleep(delay)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or not task.cancelling():
                    letter = b'!'  # the task itself was not cancelled
                case.has_swallowed = True
        return letter

    async def others(self, case):
        await turns(3)
        for peer in case.server.peers:
            check(b'!' not in peer.data, 'sent after the end:', peer.data[-20:])


@scenario('generator-swallows')
@scenario('generator-swallows-tls', is_tls=True)
@scenario('generator-swallows-large', length=300_000)
class GeneratorSwallows(Swallowing):
    def routes(self, case):
        def upload(peer, head):
            yield from peer.read(self.length)
            yield from peer.send(ok(b'/'))

        return {b'/': upload}


def refuse(peer, head):
    yield from peer.read(10)
    yield from peer.send(b'HTTP/1.1 413 No\r\ncontent-', b'length: 1\r\n\r\n', b'/')
    yield from peer.pause(LONG)


@scenario('early-response')
@scenario('early-response-tls', is_tls=True)
@scenario('early-response-generator-waits', is_waiting=True)
@scenario('early-response-generator-turns', is_turning=True)
@scenario('early-response-generator-cleans-up', is_waiting=True, cleanup=2)
@scenario('early-response-generator-blocked-and-cleans-up', cleanup=2)
class Early(GeneratorWaits):
    length = 300_000
    is_waiting = False
    is_turning = False
    idle = 0

    def routes(self, case):
        return {b'/': refuse}

    async def chunks(self, case):
        case.is_open = True
        try:
            yield b'a' * 10
            while self.is_turning:
                await asyncio.sleep(0)
            if self.is_waiting:
                await asyncio.Event().wait()
            yield b'b' * (self.length - 10)
        finally:
            await self.clean_up(case)


def hang_up(peer, head):
    yield from peer.read(10)
    yield from peer.pause(4)
    yield from Stop('reset').strike(peer)


@scenario('reset-generator-waits', is_waiting=True)
@scenario('reset-generator-cleans-up', is_waiting=True, cleanup=2)
@scenario('reset-generator-blocked-and-cleans-up', cleanup=2)
class Reset(Early):
    errors = (HttpDataError,)

    def routes(self, case):
        return {b'/': hang_up}


@scenario('early-response-generator-swallows')
@scenario('early-response-generator-swallows-tls', is_tls=True)
class EarlySwallowing(Swallowing):
    idle = 0

    def routes(self, case):
        return {b'/': refuse}


@scenario('early-response-200')
class Early200(Sending):
    def routes(self, case):
        def answer(peer, head):
            yield from peer.read(10)
            yield from peer.send(b'HTTP/1.1 200 OK\r\ncontent-', b'length: 1\r\n\r\n', b'/')
            yield from peer.skip(self.length - 10)

        return {b'/': answer}


@scenario('expect-continue')
@scenario('expect-continue-tls', is_tls=True)
@scenario('expect-nothing', interim=b'')
@scenario('expect-final', interim=None)
class Expecting(Sending):
    interim = b'HTTP/1.1 100 Continue\r\n\r\n'
    length = 50

    def fields(self):
        return (*super().fields(), (b'expect', b'100-continue'))

    def routes(self, case):
        def answer(peer, head):
            if self.interim is None:
                yield from peer.send(b'HTTP/1.1 417 No\r\ncontent-length: 1\r\n\r\n/')
                yield from peer.end()
            yield from peer.send(self.interim[:9], self.interim[9:])
            yield from peer.read(self.length)
            yield from peer.send(ok(b'/'))

        return {b'/': answer}


# Receiving

DROPS = frozenset(('drop-0', 'drop-1', 'drop-2', 'drop-in-a-cycle', 'drop-in-a-thread'))

LENGTH = (b'HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n', b'ab', b'cd', b'ef')
CHUNKED = (b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n',
           b'2\r\nab', b'\r\n4\r\ncd', b'ef\r\n', b'0\r\n', b'a: b\r\n', b'\r\n')
TO_THE_END = (b'HTTP/1.1 200 OK\r\n\r\n', b'ab', b'cd', b'ef')
INTERIMS = (b'HTTP/1.1 103 E\r\n\r\n', b'HTTP/1.1 103 E\r\na: b\r\n\r', b'\n',
            b'HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nabcdef')


@scenario('head-in-pieces')
@scenario('head-in-pieces-tls', is_tls=True)
@scenario('interims', pieces=INTERIMS)
@scenario('length', pieces=LENGTH)
@scenario('length-tls', pieces=LENGTH, is_tls=True)
@scenario('chunked', pieces=CHUNKED)
@scenario('chunked-tls', pieces=CHUNKED, is_tls=True)
@scenario('to-the-end', pieces=TO_THE_END, idle=0)
@scenario('to-the-end-tls', pieces=TO_THE_END, idle=0, is_tls=True)
class InPieces(Scenario):
    pieces = (b'HTTP/1.1 2', b'00 OK\r\ncontent-length', b': 6\r\n\r', b'\nabcdef')
    expected = b'abcdef'
    ends = DROPS

    def routes(self, case):
        def answer(peer, head):
            yield from peer.send(*self.pieces)
            if not self.idle:
                yield from peer.end()

        return {b'/': answer}

    async def client(self, case):
        return await self.read(case, [(await case.request(b'GET', self.url(case)))[2]])

    async def read(self, case, held):
        """Read a body, of which the list has the only reference, unless it is to be dropped."""
        chunks = []
        while not case.end.is_dropping(len(chunks)):
            try:
                chunks.append(await anext(held[0]))
            except StopAsyncIteration:
                return b''.join(chunks)
        return await case.end.hold(held)


@scenario('large-body')
@scenario('large-body-tls', is_tls=True)
class Large(Scenario):
    """A body that is too long to be read in one turn."""
    expected = 600_000

    def routes(self, case):
        return {b'/': lambda peer, head: peer.send(ok(b'x' * self.expected))}

    async def client(self, case):
        _, _, body = await case.request(b'GET', self.url(case))
        return len(await buffered(body))


@scenario('body-closed')
@scenario('body-closed-tls', is_tls=True)
class BodyClosed(InPieces):
    """The client closes the body, and makes another request."""
    pieces = LENGTH
    expected = b'/next'
    ends = frozenset()

    async def client(self, case):
        _, _, body = await case.request(b'GET', self.url(case))
        check(await anext(body) == b'ab', 'the first chunk')
        await body.aclose()
        _, _, body = await case.request(b'GET', self.url(case, '/next'))
        return await buffered(body)


# Functions of the caller that have time-outs of their own

@scenario('get-connection')
@scenario('get-connection-tls', is_tls=True)
class GetConnection(Scenario):
    def options(self, case):
        return {'get_connection': functools.partial(self.get_connection, case)}

    async def get_connection(self, case, scheme, host, port):
        sock = socket.socket()
        try:
            sock.setblocking(False)
            await asyncio.sleep(0)
            await self.connect(case, sock, (host, port))
            await asyncio.sleep(0)
        except BaseException:
            sock.close()
            raise
        return sock

    async def connect(self, case, sock, address):
        await asyncio.get_running_loop().sock_connect(sock, address)


ENDS_INSIDE = frozenset((
    'inside', 'inside-then-cancel', 'cancel-then-inside', 'inside-then-deadline',
    'deadline-then-inside'))


@scenario('inside-get-connection')
class InsideGetConnection(GetConnection):
    ends = ENDS_INSIDE

    async def connect(self, case, sock, address):
        await case.inside(turns(5))
        await super().connect(case, sock, address)


@scenario('inside-resolver')
class InsideResolver(Named):
    ends = ENDS_INSIDE

    async def ask(self, case):
        await case.inside(turns(5))
        await turns(3)
        await case.inside(turns(3))


@scenario('inside-second-lookup', ipv6_addresses=('::1',), **REFUSED)
class InsideSecondLookup(Racing, InsideResolver):
    pass


@scenario('inside-resolver-escaping')
class InsideEscaping(Named):
    """The function's time-out ends the lookup."""
    ends = ENDS_INSIDE
    errors = (HttpConnectionError,)

    async def ask(self, case):
        async with asyncio.timeout(None) as case.scope_inside:
            await turns(5)


@scenario('inside-generator')
@scenario('inside-generator-tls', is_tls=True)
class InsideGenerator(Sending):
    ends = ENDS_INSIDE

    async def chunks(self, case):
        await case.inside(turns(3))
        yield b'a' * 10
        await case.inside(turns(4))
        yield b'b' * (self.length - 10)
        await case.inside(turns(2))


@scenario('inside-generator-around')
class InsideGeneratorAround(Sending):
    """The function's time-out may pass while lowhaio sends. Then it ends the request."""
    ends = ENDS_INSIDE
    errors = (HttpError,)

    async def chunks(self, case):
        async with asyncio.timeout(None) as case.scope_inside:
            yield b'a' * 10
            await turns(3)
            yield b'b' * (self.length - 10)


# Both ways: the response comes while the request is being sent, and its reader goes on with that

CLOSE_BODY = frozenset(('close-body',))
ENDS_OF_TWO = frozenset(('cancel-other', 'cancel-both', 'cancel-other-first'))


class BothWays(InPieces):
    """Checks what came of both halves."""
    ends = DROPS | CLOSE_BODY

    def options(self, case):
        return {'get_sock': get_small_sock}

    async def read_on(self, case, held):
        """As `read`, but what has come is noted at once."""
        count = 0
        while not case.end.is_dropping(count):
            try:
                case.received += await anext(held[0])
            except StopAsyncIteration:
                return bytes(case.received)
            count += 1
        return await case.end.hold(held)

    def check_both(self, case):
        check(self.expected.startswith(case.received), 'read:', case.received[:60])
        for peer in case.server.peers:
            head, _, heard = bytes(peer.heard).partition(b'\r\n\r\n')
            if head.startswith(b'POST'):
                given = bytes(case.given)
                check(given.startswith(heard) or heard.startswith(given + b'GET /next'),
                      'the server got', len(heard), 'bytes, of', len(given))


@scenario('duplex')
@scenario('duplex-tls', is_tls=True)
@scenario('duplex-tls-1.2', **TLS_1_2)
@scenario('duplex-chunked', is_chunked=True)
@scenario('duplex-cleans-up', cleanup=2)
@scenario('duplex-long', length=200_000)
@scenario('duplex-long-tls', length=200_000, is_tls=True)
@scenario('duplex-waits', is_waiting=True)
@scenario('duplex-waits-tls', is_waiting=True, is_tls=True)
@scenario('duplex-waits-and-cleans-up', is_waiting=True, cleanup=2)
class Duplex(BothWays):
    """The server sends the content back as it comes."""
    length = 40_000
    is_chunked = False
    is_waiting = False  # whether the generator waits for what the reader gets
    cleanup = 0

    @property
    def expected(self):
        return b'a' * 10 + b'b' * (self.length - 20) + b'c' * 10

    def routes(self, case):
        return {b'/': self.answer}

    def head(self):
        return b'HTTP/1.1 200 OK\r\n' + (
            b'transfer-encoding: chunked\r\n\r\n' if self.is_chunked else
            b'content-length: %d\r\n\r\n' % self.length)

    def framed(self, data):
        return b'%x\r\n%b\r\n' % (len(data), data) if self.is_chunked else data

    def answer(self, peer, head):
        data = yield from peer.read(10)
        yield from peer.send(self.head()[:21], self.head()[21:])
        left = self.length - 10
        while True:
            yield from peer.send(self.framed(data), pauses=1)
            if not left:
                break
            data = yield from peer.read_some()
            left -= len(data)
        if self.is_chunked:
            yield from peer.send(b'0\r\n\r\n')

    async def chunks(self, case):
        case.is_open = True
        try:
            for chunk in (b'a' * 10, b'b' * (self.length - 20), b'c' * 10):
                case.given += chunk
                yield chunk
                await self.wait(case)
        finally:
            await self.clean_up(case)

    async def wait(self, case):
        await asyncio.sleep(0)
        while self.is_waiting and len(case.received) < len(case.given):
            await asyncio.sleep(TURN)

    async def clean_up(self, case):
        try:
            await turns(self.cleanup)
        finally:
            case.is_open = False

    async def client(self, case):
        held = [(await case.request(
            b'POST', self.url(case), body=self.chunks, body_args=(case,),
            headers=((b'content-length', b'%d' % self.length),)))[2]]
        case.body = weakref.ref(held[0])
        return await self.read_on(case, held)

    async def others(self, case):
        check(not case.is_open, 'the generator is open')
        await turns(3)
        self.check_both(case)


class DuplexUnread(Duplex):
    """The server answers as it likes, and reads later or never."""

    def answer(self, peer, head):
        yield from peer.read(10)
        yield from peer.send(self.head()[:21], self.head()[21:])
        yield from peer.send(*(self.expected[start:start + self.length // 4]
                               for start in range(0, self.length, self.length // 4)))
        yield from self.go_on(peer)

    def go_on(self, peer):
        yield from peer.pause(3)
        yield from peer.skip(self.length - 10)


@scenario('duplex-unread')
@scenario('duplex-unread-tls', is_tls=True)
@scenario('duplex-unread-and-cleans-up', cleanup=2)
@scenario('duplex-unread-long', length=200_000)
@scenario('duplex-unread-long-tls', length=140_000, is_tls=True)
class DuplexReadLater(DuplexUnread):
    length = 100_000


@scenario('duplex-whole-first')
@scenario('duplex-whole-first-tls', is_tls=True)
@scenario('duplex-whole-first-and-cleans-up', cleanup=2)
class DuplexWholeFirst(DuplexUnread):
    """The whole response comes with its head."""
    length = 200_000
    expected = b'abc'

    def answer(self, peer, head):
        yield from peer.read(10)
        yield from peer.send(ok(b'abc'))
        yield from self.go_on(peer)


@scenario('duplex-last')
@scenario('duplex-last-tls', is_tls=True)
@scenario('duplex-last-and-cleans-up', cleanup=2)
@scenario('duplex-last-reset', is_reset=True)
@scenario('duplex-last-waits', is_stuck=True)
@scenario('duplex-last-waits-tls', is_stuck=True, is_tls=True)
class DuplexLast(DuplexUnread):
    """The response is the last of its connection, which ends after it."""
    length = 200_000
    idle = 0
    expected = b'abc'
    is_reset = False
    is_stuck = False  # whether the generator waits for ever

    def answer(self, peer, head):
        yield from peer.read(10)
        yield from peer.send(b'HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\n',
                             b'a', b'bc')
        yield from peer.pause(3)
        if self.is_reset:
            yield from Stop('reset').strike(peer)
        yield from peer.end()

    async def wait(self, case):
        if self.is_stuck:
            await asyncio.Event().wait()
        await super().wait(case)


@scenario('duplex-cut-off')
@scenario('duplex-cut-off-tls', is_tls=True)
@scenario('duplex-reset', is_reset=True)
@scenario('duplex-cut-off-waits', is_stuck=True)
@scenario('duplex-cut-off-waits-and-cleans-up', is_stuck=True, cleanup=2)
class DuplexCutOff(DuplexLast):
    errors = (HttpDataError,)

    def answer(self, peer, head):
        yield from peer.read(10)
        yield from peer.send(b'HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n', b'a', b'b')
        if self.is_reset:
            yield from Stop('reset').strike(peer)
        yield from peer.end()


@scenario('duplex-too-late')
@scenario('duplex-too-late-tls', is_tls=True)
@scenario('duplex-too-late-and-cleans-up', cleanup=2)
class DuplexTooLate(DuplexUnread):
    """The server answers, and neither reads nor sends any more."""
    length = 10_000_000
    idle = 0
    expected = b'abc'
    errors = (HttpDataError,)

    def options(self, case):
        return {**super().options(case), 'socket_timeout': 12 * TURN}

    def answer(self, peer, head):
        yield from peer.read(10)
        yield from peer.send(b'HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n', b'a', b'bc')
        yield from peer.pause(LONG)

    @functools.cached_property
    def content(self):
        return bytes(self.length)

    async def chunks(self, case):
        case.is_open = True
        try:
            case.given += self.content
            yield self.content[:10]
            yield self.content[10:]
        finally:
            await self.clean_up(case)


@scenario('duplex-generator-fails')
@scenario('duplex-generator-fails-tls', is_tls=True)
@scenario('duplex-generator-fails-and-cleans-up', cleanup=2)
class DuplexGeneratorFails(Duplex):
    errors = (HttpDataError,)
    idle = 0

    async def wait(self, case):
        await turns(12)
        if len(case.given) > 10:
            raise ValueError('made up')


@scenario('duplex-generator-fails-to-close')
class DuplexGeneratorFailsToClose(Duplex):
    async def clean_up(self, case):
        await super().clean_up(case)
        if isinstance(sys.exception(), GeneratorExit):
            raise ValueError('made up')


@scenario('duplex-generator-swallows')
@scenario('duplex-generator-swallows-tls', is_tls=True)
class DuplexGeneratorSwallows(Duplex, Swallowing):
    """The generator goes on after cancellations. What it yields in the end is not sent."""
    length = 30
    expected = b'a' * 10 + b'b' * 20

    chunks = Swallowing.chunks
    wait = Swallowing.wait

    async def others(self, case):
        await Swallowing.others(self, case)
        if b'!' not in case.given:
            self.check_both(case)


@scenario('duplex-last-swallows')
@scenario('duplex-last-swallows-tls', is_tls=True)
class DuplexLastSwallows(DuplexGeneratorSwallows):
    """The server ends its half after the last response of the connection, and reads on."""
    idle = 0
    expected = b'abc'

    def answer(self, peer, head):
        yield from peer.read(10)
        yield from peer.send(
            b'HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nabc')
        yield from Stop('shut').strike(peer)


@scenario('duplex-inside')
@scenario('duplex-inside-tls', is_tls=True)
class DuplexInside(Duplex):
    ends = ENDS_INSIDE

    async def wait(self, case):
        await case.inside(turns(6))


# After 101, where both sides send what they like

class Switched(BothWays):
    """The server sends back what comes, until the client closes."""
    idle = 0
    chunks = (b'a' * 10, b'b' * 60_000, b'c' * 100_000, b'd')
    expected = b''.join(chunks)

    def routes(self, case):
        return {b'/': self.answer}

    def answer(self, peer, head):
        yield from peer.send(b'HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n', b'\r\n')
        while True:
            yield from peer.send((yield from peer.read_some()), pauses=1)

    async def switch(self, case):
        code, _, body = await case.request(
            b'POST', self.url(case), headers=((b'connection', b'upgrade'), (b'upgrade', b'x')))
        check(code == b'101', 'got', code)
        case.body = weakref.ref(body)
        return body

    async def send(self, case, body):
        for chunk in self.chunks:
            case.given += chunk
            await body.send(chunk)
            await asyncio.sleep(0)

    async def read_all(self, case, body):
        while len(case.received) < len(self.expected):
            case.received += await anext(body)
        return bytes(case.received)

    async def others(self, case):
        await turns(3)
        self.check_both(case)


@scenario('switched')
@scenario('switched-tls', is_tls=True)
@scenario('switched-tls-1.2', **TLS_1_2)
class SwitchedInTurn(Switched):
    """One task sends and reads."""
    chunks = (b'a' * 10, b'b' * 20_000, b'c')
    expected = b''.join(chunks)

    async def client(self, case):
        held = [await self.switch(case)]
        count = 0
        for chunk in self.chunks:
            case.given += chunk
            await held[0].send(chunk)
            while len(case.received) < len(case.given):
                if case.end.is_dropping(count):
                    return await case.end.hold(held)
                case.received += await anext(held[0])
                count += 1
        await held[0].aclose()
        return bytes(case.received)


class TwoTasks(Switched):
    ends = ENDS_OF_TWO | CLOSE_BODY

    async def prepare(self, case):
        # The weak reference of the case is for the scenarios that drop it.
        case.held = await self.switch(case)
        case.other = asyncio.ensure_future(self.beside(case, case.held))


@scenario('switched-reader')
@scenario('switched-reader-tls', is_tls=True)
@scenario('switched-reader-tls-1.2', **TLS_1_2)
class SwitchedReader(TwoTasks):
    """Another task sends. After the end of a reader, the next one goes on."""

    async def beside(self, case, body):
        try:
            await self.send(case, body)
        except BaseException:
            # It may have been cancelled between two sendings.
            await body.aclose()
            raise

    async def client(self, case):
        return await self.read_all(case, case.held)

    async def others(self, case):
        is_whole = isinstance(case.end, Cancel) and not isinstance(
            case.end, (CancelOther, CloseBody, ClosePool))
        try:
            check(await self.read_all(case, case.held) == self.expected, 'another end')
        except HttpError as error:
            check(not is_whole, 'the next reader failed:', repr(error), repr(error.__cause__))
        (error,) = await asyncio.gather(case.other, return_exceptions=True)
        check(not error or not is_whole, 'the sender failed:', repr(error))
        check(not error or isinstance(error, (HttpError, asyncio.CancelledError)), repr(error))
        await case.held.aclose()
        await super().others(case)


@scenario('switched-sender')
@scenario('switched-sender-tls', is_tls=True)
@scenario('switched-sender-tls-1.2', **TLS_1_2)
class SwitchedSender(TwoTasks):
    """Another task reads. It gets an error if the sender is ended in the midst of a sending."""
    beside = TwoTasks.read_all

    async def client(self, case):
        await self.send(case, case.held)
        return self.expected

    async def others(self, case):
        if len(case.given) < len(self.expected):
            # The sender was ended between two sendings, perhaps.
            await turns(60)
            await case.held.aclose()
        (error,) = await asyncio.gather(case.other, return_exceptions=True)
        check(isinstance(error, (HttpError, asyncio.CancelledError)) or error == self.expected,
              'the reader got', repr(error)[:60])
        await case.held.aclose()
        await super().others(case)


# The end of a pool

@scenario('closing')
class Closing(Dns):
    """The client itself closes the pool."""
    expected = None

    async def client(self, case):
        await Dns.client(self, case)
        await case.close()

    async def others(self, case):
        await case.renew_pool()


# ------------------------------------------------------------------------------------- ends
#
# What is done to the client in the k-th turn, and what must come of it.

MESSAGE = 'of the end'


class Cancel:
    count = 1
    is_in_scope = False

    def __init__(self, case):
        self.case = case
        self.is_done = False

    def is_dropping(self, chunks):
        return False

    def act(self):
        """Called in the k-th turn and in all later ones, until the client has ended."""
        if not self.is_done:
            self.is_done = True
            for _ in range(self.count):
                self.case.task.cancel(MESSAGE)

    def check(self, result, error):
        self.check_cancelled(result, error, self.count)
        # If there are several in one turn, a task gets the message of the first.
        check(error is None or error.args == (MESSAGE,) or self.case.scenario.cancels_itself,
              'a cancellation without its message')

    def check_cancelled(self, result, error, count):
        check(isinstance(error, asyncio.CancelledError) or self.is_swallowed(result, error),
              'a lost cancellation:', repr(error or result))
        check(self.case.cancelling == count, 'cancelling() is', self.case.cancelling)

    def is_swallowed(self, result, error):
        """Whether the caller's own function has caught the cancellation and gone on."""
        return (self.case.has_swallowed and error is None
                and result == self.case.scenario.expected)

    def check_own(self, result, error):
        """Check that the client got what it gets if nothing ends it."""
        expected, errors = self.case.scenario.expected, self.case.scenario.errors
        check(isinstance(error, errors) if error else result == expected, 'got',
              repr(error or result))
        check(self.case.cancelling == 0, 'cancelling() is', self.case.cancelling)


class CancelTwice(Cancel):
    count = 2


class CancelInARow(Cancel):
    """The task is cancelled in this turn, and in the next if there is one."""
    count = 0

    def act(self):
        self.is_done = True
        if self.count < 2:
            self.count += 1
            self.case.task.cancel(MESSAGE)


class Deadlines(Cancel):
    """Several ends in one turn, in this order: of `outside`, `inside`, and `cancel`."""

    def __init__(self, *what, case):
        super().__init__(case)
        self.what = what
        self.is_in_scope = 'outside' in what
        self.is_cancelled = False

    def act(self):
        if self.is_done or any(
                scope is None or not scope_is_open(scope) for scope in self.scopes().values()):
            return
        self.is_done = True
        loop = asyncio.get_running_loop()
        for what in self.what:
            if what == 'cancel':
                loop.call_soon(self.cancel)
            else:
                self.scopes()[what].reschedule(loop.time())

    def scopes(self):
        scopes = {'outside': self.case.scope, 'inside': self.case.scope_inside}
        return {what: scopes[what] for what in self.what if what != 'cancel'}

    def cancel(self):
        self.is_cancelled = self.case.task.cancel()

    def check(self, result, error):
        if self.is_cancelled:
            self.check_cancelled(result, error, 1)
        elif self.is_in_scope and self.case.scope.expired():
            check(type(error) is TimeoutError or self.is_swallowed(result, error),
                  'a lost time-out:', repr(error or result))
            check(self.case.cancelling == 0, 'cancelling() is', self.case.cancelling)
        else:
            self.check_own(result, error)


def scope_is_open(scope):
    return 'active' in repr(scope)


class Close(Cancel):
    """The coroutine of the client is closed, outside of any task."""

    def act(self):
        if not self.is_done:
            self.is_done = self.case.closable.close()

    def check(self, result, error):
        check(error is None, 'got', repr(error))
        check(self.case.cancelling == 0, 'cancelling() is', self.case.cancelling)


class ClosePool(Cancel):
    """Another task closes the pool. The client gets an answer or an HttpError."""

    def act(self):
        if not self.is_done:
            self.is_done = True
            self.case.beside = asyncio.ensure_future(self.case.close())

    def check(self, result, error):
        check(error is None and result == self.case.scenario.expected or
              isinstance(error, HttpError), 'got', repr(error or result))
        check(self.case.cancelling == 0, 'cancelling() is', self.case.cancelling)


class Drop(Cancel):
    """The body is dropped after so many chunks, or is held until the turn has come."""

    def __init__(self, chunks, case, is_in_cycle=False, is_in_thread=False):
        super().__init__(case)
        self.chunks = chunks
        self.is_in_cycle = is_in_cycle
        self.is_in_thread = is_in_thread

    def act(self):
        self.is_done = True

    def is_dropping(self, chunks):
        return chunks >= self.chunks

    async def hold(self, held):
        """Hold the body, and drop it, which must be the only thing in this list."""
        events = self.case.loop.events
        for _ in range(40):
            if self.is_done:
                break
            await asyncio.sleep(0)
        events = self.case.loop.events - events
        check(events < 10, events, 'events while nobody read')
        if self.is_in_cycle:
            cycle = held.copy()
            held.clear()
            cycle.append(cycle)
            del cycle
            gc.collect()
        elif self.is_in_thread:
            thread = threading.Thread(target=held.clear)
            thread.start()
            thread.join()
        held.clear()
        return self.case.scenario.expected

    def check(self, result, error):
        self.check_own(result, error)


class CloseBody(Cancel):
    """Another task closes the body, once there is one. The client gets it all or an HttpError."""

    def act(self):
        body = self.case.body and self.case.body()
        if body is not None and not self.is_done:
            self.is_done = True
            self.case.beside = asyncio.ensure_future(body.aclose())

    def check(self, result, error):
        check(error is None and result == self.case.scenario.expected or
              isinstance(error, HttpError), 'got', repr(error or result))
        check(self.case.cancelling == 0, 'cancelling() is', self.case.cancelling)


class CancelOther(Cancel):
    """The task beside the client is cancelled, and perhaps the client, too."""

    def __init__(self, *what, case):
        super().__init__(case)
        self.what = what
        self.count = what.count('client')

    def act(self):
        if not self.is_done:
            self.is_done = True
            for one in self.what:
                (self.case.task if one == 'client' else self.case.other).cancel(MESSAGE)

    def check(self, result, error):
        if self.count:
            super().check(result, error)
        else:
            CloseBody.check(self, result, error)


def deadlines(*what):
    return functools.partial(lambda case: Deadlines(*what, case=case))


def cancels(*what):
    return functools.partial(lambda case: CancelOther(*what, case=case))


# All scenarios have these ends, but for those in ENDS_OF_SOME.
ENDS = {
    'cancel': Cancel,
    'cancel-twice': CancelTwice,
    'cancel-in-a-row': CancelInARow,
    'deadline': deadlines('outside'),
    'deadline-then-cancel': deadlines('outside', 'cancel'),
    'cancel-then-deadline': deadlines('cancel', 'outside'),
    'close': Close,
    'close-pool': ClosePool,
    'inside': deadlines('inside'),
    'inside-then-cancel': deadlines('inside', 'cancel'),
    'cancel-then-inside': deadlines('cancel', 'inside'),
    'inside-then-deadline': deadlines('inside', 'outside'),
    'deadline-then-inside': deadlines('outside', 'inside'),
    'drop-0': functools.partial(Drop, 0),
    'drop-1': functools.partial(Drop, 1),
    'drop-2': functools.partial(Drop, 2),
    'drop-in-a-cycle': functools.partial(Drop, 1, is_in_cycle=True),
    'drop-in-a-thread': functools.partial(Drop, 1, is_in_thread=True),
    'close-body': CloseBody,
    'cancel-other': cancels('other'),
    'cancel-both': cancels('client', 'other'),
    'cancel-other-first': cancels('other', 'client'),
}
ENDS_OF_SOME = ENDS_INSIDE | DROPS | ENDS_OF_TWO | CLOSE_BODY


class Closable:
    """Awaits a coroutine, which can be closed from outside."""

    def __init__(self, coroutine):
        self.coroutine = coroutine
        self.is_closed = False
        self.woken = None
        self.error = None

    def __await__(self):
        loop = asyncio.get_running_loop()
        step = functools.partial(self.coroutine.send, None)
        while not self.is_closed:
            try:
                waited_for = step()
            except StopIteration as stop:
                return stop.value
            self.woken = loop.create_future()
            if waited_for is None:
                loop.call_soon(lowhaio.wake, self.woken)
            else:
                waited_for._asyncio_future_blocking = False
                waited_for.add_done_callback(functools.partial(self.retrieve, self.woken))
            step = functools.partial(self.coroutine.send, None)
            try:
                yield from self.woken
            except asyncio.CancelledError as cancelled:
                step = functools.partial(self.coroutine.throw, cancelled)
        if self.error is not None:
            raise self.error
        return None

    def retrieve(self, woken, future):
        # A task does this, too, so that the loop does not complain about the exception.
        if not future.cancelled():
            future.exception()
        lowhaio.wake(woken)

    def close(self):
        """Close the coroutine. Returns False if it has not started."""
        if self.woken is None:
            return False
        self.is_closed = True
        try:
            self.coroutine.close()
        except BaseException as error:
            self.error = error
        lowhaio.wake(self.woken)
        return True


# ------------------------------------------------------------------------------------ cases

# When the end happens in its turn: before or after the steps of the servers and the timers, and
# either as a callback that was due in the turn or as an event of a descriptor.
ORDERS = {'before': (True, False), 'after': (False, False),
          'event-before': (True, True), 'event-after': (False, True)}


class Case:
    def __init__(self, scenario, make_end, order, number):
        self.scenario = scenario
        self.is_before, self.is_event = ORDERS[order]
        self.number = number
        self.end = make_end(case=self)
        self.watch = Watch()
        # Every other case is watched, which takes a way of its own through the module.
        self.story = Story() if number % 2 else None
        self.started_at = None
        self.task = self.closable = self.scope = self.scope_inside = self.beside = None
        # A weak reference to the response body, and the task beside the client.
        self.body = self.other = None
        # What the generator has yielded, or the sender sent, and what was read.
        self.given = bytearray()
        self.received = bytearray()
        self.result = self.error = self.cancelling = None
        self.is_open = self.has_swallowed = False

    async def run(self, loop):
        """Run the case. Returns False if the client completed before it was to be ended."""
        check(self.number < MAX_NUMBER, 'it does not end by itself')
        self.loop = loop
        with self.scenario.servers(self) as self.running:
            self.request, self.close = self.pool()
            with turning(loop, self.step, self.is_event):
                try:
                    await self.run_with_servers()
                except asyncio.CancelledError:
                    self.watch.check()
                    raise
        return self.end.is_done

    def pool(self):
        options = {'max_connections': 1, 'get_ssl_context': trusting,
                   'socket_timeout': LONG, 'keep_alive_timeout': LONG,
                   'on_event': self.story, **self.scenario.options(self)}
        self.is_hasty = LONG not in (options['socket_timeout'], options.get('pool_timeout', LONG))
        return Pool(**options)

    async def renew_pool(self):
        await self.close()
        # The numbers of another pool begin anew.
        self.story = self.story and Story()
        self.request, self.close = self.pool()

    def step(self):
        self.loop.check_registered()
        self.watch.step()
        if self.is_before:
            self.act()
        for server in self.running:
            server.step()
        self.loop.pass_time()
        if not self.is_before:
            self.act()

    def act(self):
        if (self.started_at is not None and not self.task.done()
                and self.watch.turn - self.started_at >= self.number):
            self.end.act()

    def start(self):
        self.task = asyncio.ensure_future(self.run_client())

    async def run_client(self):
        self.started_at = self.watch.turn
        try:
            if isinstance(self.end, Close):
                self.closable = Closable(self.scenario.client(self))
                self.result = await self.closable
            elif self.end.is_in_scope:
                async with asyncio.timeout(None) as self.scope:
                    self.result = await self.scenario.client(self)
            else:
                self.result = await self.scenario.client(self)
        except (Exception, asyncio.CancelledError) as error:
            self.error = error
        self.cancelling = asyncio.current_task().cancelling()

    async def inside(self, coroutine):
        """Await the coroutine with a time-out that the caller's function expects."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as self.scope_inside:
                await coroutine

    async def run_with_servers(self):
        await self.scenario.prepare(self)
        if self.task is None:
            self.start()
        await asyncio.wait([self.task])
        self.watch.check()
        self.task.result()
        self.check_outcome()
        self.error = None
        if isinstance(self.end, Close):
            # A generator that was left behind would be closed in a task now.
            self.closable = None
            gc.collect()
            await turns(2)
        if self.beside is not None:
            await self.beside
        try:
            await self.scenario.others(self)
        except HttpError as error:
            check(isinstance(self.end, ClosePool), 'others got', repr(error))
        await turns(4)
        self.check_timers(self.scenario.idle)
        if isinstance(self.end, ClosePool):
            await self.renew_pool()
        await self.check_next()
        await self.close()
        await turns(3)
        self.check_timers(0)
        if self.story is not None:
            self.story.end()

    def check_outcome(self):
        try:
            if self.end.is_done and not (
                    self.scenario.errors and isinstance(self.error, self.scenario.errors)
                    and isinstance(self.end, (Deadlines, ClosePool))):
                self.end.check(self.result, self.error)
            else:
                # The client was not ended, or failed in the turn in which its time was up.
                self.end.check_own(self.result, self.error)
        except Broken as broken:
            raise broken from self.error

    async def check_next(self):
        while True:
            try:
                _, _, body = await self.request(b'GET', self.scenario.url(self, '/next'))
                break
            except HttpError as error:
                # The short time-out of some scenarios passes here, too.
                if not self.is_hasty or not isinstance(error.__cause__, TimeoutError):
                    raise Broken('the next request failed') from error
        answer = await buffered(body)
        check(answer == b'/next', 'the next request got', answer)

    def check_timers(self, number):
        timers = self.loop.pending()
        check(len(timers) <= number, 'timers left:', timers)


def run(loop_name, scenario_name, end_name, order, number):
    return run_case(
        loop_name, Case(SCENARIOS[scenario_name], ENDS[end_name], order, number).run)


def all_series():
    for name in ('aiodnsresolver', 'lowhaio'):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for loop_name, name, end, order in itertools.product(LOOPS, SCENARIOS, ENDS, ORDERS):
        if end not in ENDS_OF_SOME or end in SCENARIOS[name].ends:
            yield Series(f'{loop_name}/{name}/{end}/{order}',
                         functools.partial(run, loop_name, name, end, order))


if __name__ == '__main__':
    main(__doc__, all_series)
