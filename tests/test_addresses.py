"""Hosts with several addresses of both families: their turns, the race to connect, and reuse."""

import asyncio
import collections
import contextlib
import errno
import functools
import ipaddress
import itertools
import os
import select
import socket
import stat
import threading
import time
from ipaddress import IPv4Address, IPv6Address

import aiodnsresolver
import pytest

import lowhaio
from lowhaio import HttpConnectionError, HttpDnsError, HttpTlsError, buffered
from tests.harness import (
    OK,
    PATIENCE,
    REFUSED,
    Answering,
    Nameserver,
    Server,
    ServerAt,
    asking,
    bound_to_each,
    failed,
    get,
    measured,
    no_address,
    on_clock,
    on_loops,
    on_loops_at_once,
    passing,
    pool,
    resolving,
    row,
    system_error,
    trusting,
    turns,
    until,
)


# Hosts with several addresses, some of which refuse or are silent, and resolvers that answer
# for them. What is slow on purpose runs beside other rows of its table.


class SilentAt:
    """A listener with a full backlog: attempts to connect hang. Once it is drained, those that
    hang succeed when the system has repeated them, a second after they began."""

    def __init__(self, sock):
        self.sock = sock
        sock.listen(0)
        self.accepted = []
        self.fillers = [socket.socket(sock.family) for _ in range(8)]
        for filler in self.fillers:
            filler.setblocking(False)
            filler.connect_ex(sock.getsockname())

    def drain(self):
        self.close_fillers()
        self.sock.listen()
        self.sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.sock.accept()[0].close()

    def close_fillers(self):
        for filler in self.fillers:
            filler.close()
        self.fillers.clear()


class Hosts:
    """A host whose IPv4 addresses, 127.0.0.1 and so on, and whose IPv6 address, ::1, each are
    'serving', 'refusing', 'silent', or 'mute', which is to accept and do nothing, at one port."""

    def __init__(self, *kinds, ipv6=None):
        self.ipv4 = [f'127.0.0.{number}' for number in range(1, len(kinds) + 1)]
        self.kinds = dict(zip(self.ipv4, kinds, strict=True))
        if ipv6 is not None:
            self.kinds['::1'] = ipv6
        self.servers = {}
        self.silent = {}
        self.used = []  # the address of each request
        self.ended = []  # the address of each connection that ended after a request

    async def __aenter__(self):
        self.stack = contextlib.AsyncExitStack()
        self.socks = dict(zip(self.kinds, bound_to_each(*self.kinds), strict=True))
        self.port = self.socks[next(iter(self.kinds))].getsockname()[1]
        self.url = f'http://name.test:{self.port}/'
        self.origin = f'http://name.test:{self.port}'
        for address, kind in self.kinds.items():
            self.stack.callback(self.socks[address].close)
            if kind == 'serving':
                await self.serve(address)
            elif kind == 'mute':
                self.socks[address].listen()
            elif kind == 'silent':
                self.silent[address] = SilentAt(self.socks[address])
                self.stack.callback(self.silent[address].close_fillers)
        return self

    async def __aexit__(self, *error):
        await self.stack.__aexit__(*error)

    async def serve(self, address):
        """What hung or was refused there is served from now on."""
        if address in self.silent:
            self.silent[address].drain()
        self.servers[address] = await self.stack.enter_async_context(
            ServerAt(self.socks[address], functools.partial(self.answer, address)))

    async def answer(self, address, peer):
        await peer.read_head()
        self.used.append(address)
        await peer.send(OK)
        try:
            while True:
                await peer.read_head()
                self.used.append(address)
                await peer.send(OK)
        finally:
            self.ended.append(address)


class Records:
    """A `get_dns_resolver` for all names, of the A and the AAAA records: each are addresses, or
    an async function that returns them. Fresh for some seconds, if these are given."""

    def __init__(self, ipv4, ipv6=no_address, seconds=None):
        self.ipv4 = ipv4
        self.ipv6 = ipv6
        self.seconds = seconds
        self.asked = []

    def __call__(self, get_logger_adapter):
        return self.resolve, self.clear_cache

    async def resolve(self, host, kind, get_logger_adapter):
        self.asked.append(kind.name)
        answer = self.ipv4 if kind == aiodnsresolver.TYPES.A else self.ipv6
        await asyncio.sleep(0)
        return [self.address(address)
                for address in (await answer(host) if callable(answer) else answer)]

    def address(self, text):
        if self.seconds is None:
            return ipaddress.ip_address(text)
        expires_at = asyncio.get_running_loop().time() + self.seconds
        kind = aiodnsresolver.IPv6AddressExpiresAt if ':' in text else \
            aiodnsresolver.IPv4AddressExpiresAt
        return kind(text, expires_at=expires_at)

    async def clear_cache(self, get_logger_adapter):
        pass


def raising(kind, *args):
    """Of a resolver whose lookup fails."""
    async def answer(host):
        raise kind(*args)

    return answer


class Pending:
    """An answer that comes when it is given, and tells when nobody waits for it any more."""

    def __init__(self):
        self.waiters = []
        self.ended = 0

    async def __call__(self, host):
        waiter = asyncio.get_running_loop().create_future()
        self.waiters.append(waiter)
        try:
            return await waiter
        finally:
            self.ended += 1


class Opened:
    """A `get_sock` that keeps what it made."""

    def __init__(self):
        self.socks = []

    def __call__(self, family):
        self.socks.append(socket.socket(family))
        return self.socks[-1]

    def still_open(self):
        """The indexes of the sockets that are not closed."""
        return [index for index, sock in enumerate(self.socks) if sock.fileno() != -1]


async def rows(test, table):
    """Run the test for each row of the table, all at the same time."""
    async def run(name, args):
        with row(name):
            await test(*args)

    async with asyncio.TaskGroup() as group:
        for name, args in table.items():
            group.create_task(run(name, args))


async def connected(sock):
    """Wait until an attempt to connect has succeeded, while the loop does not get to see it."""
    poller = select.poll()
    poller.register(sock, select.POLLOUT)
    assert poller.poll(PATIENCE * 1000)


@on_loops_at_once
async def test_whoever_watches_a_pool_is_told_of_each_attempt():
    events = []
    async with Hosts('silent', 'refusing', 'serving', ipv6='refusing') as hosts:
        records = Records(hosts.ipv4, ['::1'])
        async with pool(get_dns_resolver=records, on_event=events.append) as request:
            await get(request, hosts.url)
    attempts = {event.peer: (event.connection, type(event.error)) for event in events
                if isinstance(event, lowhaio.ConnectionAttempted)}
    # The one that hangs is given up when another one has connected.
    assert attempts == {
        f'127.0.0.1:{hosts.port}': (None, type(None)),
        f'127.0.0.2:{hosts.port}': (None, ConnectionRefusedError),
        f'127.0.0.3:{hosts.port}': (1, type(None))}
    assert type(events[2]) is lowhaio.ConnectionAttempted


@on_loops_at_once
async def test_whoever_watches_a_pool_is_told_of_the_lookup_while_connecting():
    for ipv6, addresses, kind in ((['::1'], ('::1',), type(None)),
                                  (raising(OSError, 'no answer'), (), OSError)):
        events = []
        async with Hosts('refusing', ipv6='serving') as hosts:
            records = Records(hosts.ipv4, ipv6)
            async with pool(get_dns_resolver=records, on_event=events.append) as request:
                with contextlib.suppress(HttpConnectionError):
                    await get(request, hosts.url)
        first, second = [event for event in events if isinstance(event, lowhaio.NameResolved)]
        assert first.addresses == ('127.0.0.1',)
        assert (second.addresses, type(second.error)) == (addresses, kind)


# Whose turn it is


IN_TURN = {
    'one after the other': (3600, False, False),
    'one after the other, asked each time': (None, False, False),
    'all at once, of a known name': (3600, True, True),
    'all at once, of a new name': (3600, True, False),
    'all at once, asked each time': (None, True, False),
}


@pytest.mark.parametrize('case', IN_TURN)
@on_loops
async def test_twelve_new_connections_take_each_of_three_addresses_four_times(case):
    seconds, at_once, is_known = IN_TURN[case]
    async with Hosts('serving', 'serving', 'serving') as hosts:
        records = Records(hosts.ipv4, seconds=seconds)
        async with pool(get_dns_resolver=records, keep_alive_timeout=0) as request:
            if is_known:
                await get(request, hosts.url)
                assert hosts.used == ['127.0.0.1']
                hosts.used.clear()
            if at_once:
                await asyncio.gather(*(get(request, hosts.url) for _ in range(12)))
                assert collections.Counter(hosts.used) == dict.fromkeys(hosts.ipv4, 4)
            else:
                for _ in range(12):
                    await get(request, hosts.url)
                assert hosts.used == hosts.ipv4 * 4


@on_loops
async def test_a_nameserver_that_rotates_its_answers_does_not_undo_the_turns(nameserver):
    """Each connection would go to the same address otherwise."""
    async with Hosts('serving', 'serving', 'serving') as hosts:
        nameserver.ttl = 0
        options = {'get_dns_resolver': asking((5, nameserver.address)), 'keep_alive_timeout': 0,
                   'min_ttl': 0}
        async with pool(**options) as request:
            for number in range(12):
                first = -number % 3
                nameserver.answers['name.test'] = hosts.ipv4[first:] + hosts.ipv4[:first]
                await get(request, hosts.url)
        assert nameserver.queries == {'name.test': 12}
        assert hosts.used == hosts.ipv4 * 4


@on_loops
async def test_addresses_that_come_and_go_leave_the_order_of_the_others():
    async with Hosts('serving', 'serving', 'serving') as hosts:
        records = Records(hosts.ipv4[:2])
        async with pool(get_dns_resolver=records, keep_alive_timeout=0) as request:
            await get(request, hosts.url)
            records.ipv4 = ['127.0.0.3', '127.0.0.2', '127.0.0.1']
            for _ in range(3):
                await get(request, hosts.url)
            assert hosts.used == ['127.0.0.1', '127.0.0.2', '127.0.0.3', '127.0.0.1']
            records.ipv4 = ['127.0.0.3', '127.0.0.1']
            for _ in range(2):
                await get(request, hosts.url)
            assert sorted(hosts.used[4:]) == ['127.0.0.1', '127.0.0.3']


# The first to connect


async def given_quarters(awaitable, opened, counts):
    """What it returns, on a loop whose clock stands.

    A quarter second passes each time so many attempts have begun, and no other time does: what
    would wait for more would hang. The next attempt may not begin any sooner.
    """
    task = asyncio.ensure_future(awaitable)
    for count in counts:
        await until(lambda count=count: len(opened.socks) == count)
        await passing(0.24)
        assert len(opened.socks) == count
        await passing(0.01)
    return await task


RACES = {
    'a silent one is first': ('silent', 'serving'),
    'three silent ones are first': ('silent', 'silent', 'silent', 'serving'),
    'many that refuse are first': ('refusing',) * 40 + ('serving',),
    'many that refuse after a silent one': ('silent', *('refusing',) * 40, 'serving'),
    'silent and refusing ones by turns': ('silent', 'refusing', 'silent', 'refusing', 'serving'),
}


@on_clock
async def test_the_next_address_is_tried_after_a_quarter_second_or_when_one_has_failed():
    for name, kinds in RACES.items():
        opened = Opened()
        silent = [number for number, kind in enumerate(kinds, 1) if kind == 'silent']
        with row(name):
            async with Hosts(*kinds) as hosts:
                records = Records(hosts.ipv4)
                async with pool(get_dns_resolver=records, get_sock=opened) as request:
                    code, _, body = await given_quarters(
                        request(b'GET', hosts.url), opened, silent)
                    # The losers have been closed by now.
                    assert opened.still_open() == [len(kinds) - 1]
                    assert (code, await buffered(body)) == (b'200', b'ok')
                assert hosts.used == hosts.ipv4[-1:]
                assert records.asked == ['A']


def two_attempts(opened, pending):
    return len(opened.socks) == 2


def lookup_waits(opened, pending):
    return pending.waiters


def lookup_ended(opened, pending):
    return pending.ended


async def answer_when_cancelled(pending, host):
    try:
        return await pending(host)
    except asyncio.CancelledError:
        return ['::1']


async def fail_when_cancelled(pending, host):
    try:
        return await pending(host)
    except asyncio.CancelledError:
        raise OSError('cancelled') from None


async def wait_when_cancelled(pending, host):
    try:
        return await pending(host)
    except asyncio.CancelledError:
        return await asyncio.get_running_loop().create_future()


async def wait(pending, host):
    return await pending(host)


# What the addresses do, how the AAAA records are asked for, their answer, and when the first
# address begins to serve.
SLOW_WINNERS = {
    'of two attempts': (('silent', 'silent'), wait, None, two_attempts),
    'of three attempts, one of which has failed': (
        ('silent', 'refusing', 'silent'), wait, None,
        lambda opened, pending: len(opened.socks) == 3),
    'while more addresses are asked for': (('silent',), wait, None, lookup_waits),
    'when asking for more goes on to answer': (
        ('silent',), answer_when_cancelled, None, lookup_waits),
    'when asking for more goes on to fail': (
        ('silent',), fail_when_cancelled, None, lookup_waits),
    'when asking for more goes on to wait': (
        ('silent',), wait_when_cancelled, None, lookup_waits),
    'when there are no more addresses': (('silent',), wait, (), lookup_ended),
    'when the other address is its own': (('silent',), wait, ('127.0.0.1',), lookup_ended),
    'when the other address refuses': (
        ('silent',), wait, ('::ffff:127.0.0.100',), two_attempts),
    'when the name has no other records': (
        ('silent',), wait, aiodnsresolver.DnsRecordDoesNotExist(), lookup_ended),
    'when asking for more has failed': (
        ('silent',), wait, aiodnsresolver.DnsResponseCode(2), lookup_ended),
    'when asking for more has timed out': (
        ('silent',), wait, aiodnsresolver.DnsTimeout(), lookup_ended),
}


@on_loops_at_once
async def test_an_earlier_attempt_still_wins_after_others_were_started():
    async def race(kinds, ask, answer, is_time):
        opened, pending = Opened(), Pending()
        async with Hosts(*kinds) as hosts:
            records = Records(hosts.ipv4, functools.partial(ask, pending))
            async with pool(get_dns_resolver=records, get_sock=opened) as request:
                task = asyncio.create_task(request(b'GET', hosts.url))
                if answer is not None:
                    await until(lambda: pending.waiters)
                    if isinstance(answer, Exception):
                        pending.waiters[0].set_exception(answer)
                    else:
                        pending.waiters[0].set_result(answer)
                await until(lambda: is_time(opened, pending))
                await turns(3)
                assert not task.done()
                await hosts.serve('127.0.0.1')
                code, _, body = await task
                assert opened.still_open() == [0]
                assert task.cancelling() == 0
                assert pending.ended == len(pending.waiters)
                assert (code, await buffered(body)) == (b'200', b'ok')
            assert hosts.used == ['127.0.0.1']

    await rows(race, SLOW_WINNERS)


@on_loops_at_once
async def test_of_two_attempts_that_succeed_at_once_one_is_used_and_the_other_closed():
    opened = Opened()
    async with Hosts('silent', 'silent') as hosts:
        async with pool(get_dns_resolver=Records(hosts.ipv4), get_sock=opened) as request:
            task = asyncio.create_task(request(b'GET', hosts.url))
            await until(lambda: len(opened.socks) == 2)
            for address in hosts.ipv4:
                await hosts.serve(address)
            for sock in opened.socks:
                await connected(sock)
            await task
            assert opened.still_open() == [0]
            assert hosts.used == ['127.0.0.1']


@on_loops_at_once
async def test_a_socket_that_connects_at_once_wins():
    class Blocking(socket.socket):
        def connect(self, address):
            self.setblocking(True)
            super().connect(address)
            self.setblocking(False)

    socks = []

    def get_sock(family):
        # The first is an attempt that is under way.
        socks.append(socket.socket(family) if not socks else Blocking(family))
        return socks[-1]

    async with Hosts('silent', 'refusing', 'serving', 'serving') as hosts:
        async with pool(get_dns_resolver=Records(hosts.ipv4), get_sock=get_sock) as request:
            assert (await get(request, hosts.url))[2] == b'ok'
            assert [sock.fileno() == -1 for sock in socks] == [True, True, False]
        assert hosts.used == ['127.0.0.3']


# AAAA records


# What the IPv4 addresses do, the A records if not these, after how many attempts a quarter second
# has to pass, which address is used, and which records were asked for.
FAMILIES = {
    'an IPv4 address accepts': (('serving',), None, (), '127.0.0.1', ['A']),
    'the last IPv4 address accepts': (
        ('refusing', 'silent', 'serving'), None, (2,), '127.0.0.3', ['A']),
    'the IPv4 address refuses': (('refusing',), None, (), '::1', ['A', 'AAAA']),
    'all IPv4 addresses refuse': (
        ('refusing', 'refusing', 'refusing'), None, (), '::1', ['A', 'AAAA']),
    'the IPv4 address is silent': (('silent',), None, (1,), '::1', ['A', 'AAAA']),
    'all IPv4 addresses are silent': (('silent', 'silent'), None, (1, 2), '::1', ['A', 'AAAA']),
    'an IPv4 address is silent, one refuses': (
        ('silent', 'refusing'), None, (1,), '::1', ['A', 'AAAA']),
    'an IPv4 network can not be reached': ((), ['224.0.0.1'], (), '::1', ['A', 'AAAA']),
    'there is no A record': (
        (), raising(aiodnsresolver.DnsNoMatchingAnswers), (), '::1', ['A', 'AAAA']),
    'the name has no records but AAAA': (
        (), raising(aiodnsresolver.DnsRecordDoesNotExist), (), '::1', ['A', 'AAAA']),
    'the A records are none': ((), [], (), '::1', ['A', 'AAAA']),
}


@on_clock
async def test_aaaa_records_are_asked_for_when_no_ipv4_address_has_connected_by_its_turn():
    for name, (kinds, ipv4, counts, address, asked) in FAMILIES.items():
        opened = Opened()
        with row(name):
            async with Hosts(*kinds, ipv6='serving') as hosts:
                records = Records(hosts.ipv4 if ipv4 is None else ipv4, ['::1'])
                async with pool(get_dns_resolver=records, get_sock=opened) as request:
                    await given_quarters(request(b'GET', hosts.url), opened, counts)
                    assert opened.still_open() == [len(opened.socks) - 1]
                assert hosts.used == [address]
                assert records.asked == asked


@on_clock
async def test_aaaa_records_are_asked_for_at_once_when_the_a_records_are_of_no_use():
    """Time stands still: if they were waited for, this would hang."""
    for name, (kinds, ipv4) in {
            'the IPv4 addresses refuse': (('refusing', 'refusing'), None),
            'there is no A record': ((), no_address)}.items():
        with row(name):
            async with Hosts(*kinds, ipv6='serving') as hosts:
                records = Records(hosts.ipv4 if ipv4 is None else ipv4, ['::1'])
                options = {'get_dns_resolver': records, 'keep_alive_timeout': 0}
                async with pool(**options) as request:
                    for _ in range(40):
                        assert (await get(request, hosts.url))[2] == b'ok'
                assert records.asked == ['A', 'AAAA'] * 40


@on_loops
async def test_a_name_with_nothing_but_aaaa_records_works(nameserver):
    async with Hosts(ipv6='serving') as hosts:
        nameserver.answers.clear()
        nameserver.ipv6_answers['name.test'] = ['::1']
        async with pool(get_dns_resolver=asking((5, nameserver.address)),
                        keep_alive_timeout=0) as request:
            for _ in range(3):
                assert (await get(request, hosts.url))[2] == b'ok'
        assert hosts.used == ['::1'] * 3
    # Both answers are remembered: that there is no A, as long as the AAAA records.
    assert nameserver.queries == nameserver.ipv6_queries == {'name.test': 1}


@on_loops
async def test_ipv6_addresses_take_turns_among_themselves():
    """The IPv4 ones, tried first, refuse."""
    async with Hosts('refusing', 'serving', 'serving') as hosts:
        records = Records(['127.0.0.1'], ['::ffff:127.0.0.2', '::ffff:127.0.0.3'], seconds=3600)
        async with pool(get_dns_resolver=records, keep_alive_timeout=0) as request:
            for _ in range(6):
                await get(request, hosts.url)
        assert collections.Counter(hosts.used) == {'127.0.0.2': 3, '127.0.0.3': 3}
        assert records.asked == ['A', 'AAAA']


@on_loops
async def test_a_silent_nameserver_for_aaaa_records_cancels_no_request(nameserver):
    """The resolver cancels the task that waits for IPv4 too, and goes on with the next one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(('127.0.0.1', 0))
        opened = Opened()
        async with Hosts('silent', ipv6='serving') as hosts:
            nameserver.ipv6_answers['name.test'] = ['::1']
            nameservers = [(0.02, silent.getsockname())] * 2 + [(5, nameserver.address)]
            async with pool(get_dns_resolver=asking(*nameservers), get_sock=opened) as request:
                async with asyncio.timeout(PATIENCE), asyncio.TaskGroup():
                    await request(b'GET', hosts.url)
                    assert opened.still_open() == [1]
                    assert asyncio.current_task().cancelling() == 0
                    await turns(3)
            assert hosts.used == ['::1']


@on_loops
async def test_silent_nameservers_for_aaaa_records_leave_the_ipv4_attempt_alone(nameserver):
    opened = Opened()
    async with Hosts('silent') as hosts:
        nameserver.ipv6_answers['name.test'] = None
        options = {'get_dns_resolver': asking(*[(0.05, nameserver.address)] * 3)}
        async with pool(**options, get_sock=opened) as request:
            task = asyncio.create_task(request(b'GET', hosts.url))
            await until(lambda: nameserver.ipv6_queries['name.test'] == 3)
            await hosts.serve('127.0.0.1')
            await task
            assert task.cancelling() == 0
            assert opened.still_open() == [0]
        assert hosts.used == ['127.0.0.1']


@on_loops_at_once
async def test_silent_nameservers_for_aaaa_records_leave_time_to_connect():
    """The connection that is idle goes to an IPv6 address: is that still current?"""
    pending = Pending()

    async def ipv6(host):
        return ['::1'] if not hosts.used else await pending(host)

    async with Hosts('refusing', ipv6='serving') as hosts:
        records = Records(hosts.ipv4, ipv6, seconds=0)
        async with pool(get_dns_resolver=records, socket_timeout=2, min_ttl=0) as request:
            await get(request, hosts.url)
            await hosts.serve('127.0.0.1')
            await get(request, hosts.url)
    assert hosts.used == ['::1', '127.0.0.1']
    assert pending.ended == 1


@on_loops_at_once
async def test_an_answer_in_the_tick_in_which_an_attempt_succeeds_is_not_needed():
    opened, pending, events = Opened(), Pending(), []
    async with Hosts('silent', ipv6='serving') as hosts:
        async with pool(get_dns_resolver=Records(hosts.ipv4, pending),
                        get_sock=opened, on_event=events.append) as request:
            task = asyncio.create_task(request(b'GET', hosts.url))
            await until(lambda: pending.waiters)
            await hosts.serve('127.0.0.1')
            await connected(opened.socks[0])
            pending.waiters[0].set_result(['::1'])
            await task
            assert (pending.ended, task.cancelling(), opened.still_open()) == (1, 0, [0])
        assert hosts.used == ['127.0.0.1']
    [attempt] = [each for each in events if isinstance(each, lowhaio.ConnectionAttempted)]
    assert (attempt.connection, attempt.error) == (1, None)


# Errors that come at once


@on_clock
async def test_an_address_that_fails_at_once_is_followed_by_the_next_without_delay():
    """Time stands still: if one of them were waited for, this would hang."""
    async def connect_often(ipv4, ipv6, refused_family, used):
        def get_sock(family):
            if family == refused_family:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return socket.socket(family)

        async with Hosts('refusing', 'serving', ipv6='serving') as hosts:
            options = {'get_dns_resolver': Records(ipv4, ipv6), 'get_sock': get_sock}
            async with pool(**options, keep_alive_timeout=0) as request:
                for _ in range(40):
                    assert (await get(request, hosts.url))[2] == b'ok'
            assert set(hosts.used) == {used}

    await rows(connect_often, {
        'no socket for IPv4': (['127.0.0.2'], ['::1'], socket.AF_INET, '::1'),
        'no socket for IPv6': (['127.0.0.1'], ['::1', '127.0.0.2'], socket.AF_INET6, '127.0.0.2'),
        'no IPv4 network': (['224.0.0.1'], ['::1'], None, '::1'),
        'no IPv6 network': (['127.0.0.1'], ['ff02::1', '127.0.0.2'], None, '127.0.0.2'),
        'no network for one of two': (['224.0.0.1', '127.0.0.2'], ['::1'], None, '127.0.0.2'),
    })


@on_loops_at_once
async def test_a_get_sock_that_fails_for_one_address_is_called_for_the_next():
    opened = Opened()

    def get_sock(family):
        if len(opened.socks) == 1:
            opened.socks.append(socket.socket())
            opened.socks[1].close()
            raise OSError('not this time')
        return opened(family)

    async with Hosts('silent', 'serving', 'serving') as hosts:
        async with pool(get_dns_resolver=Records(hosts.ipv4), get_sock=get_sock) as request:
            assert (await get(request, hosts.url))[2] == b'ok'
            assert opened.still_open() == [2]
        assert hosts.used == ['127.0.0.3']


# Cancellations


@on_loops_at_once
async def test_a_race_can_be_cancelled():
    async def cancel(kinds, ipv6, is_time):
        opened, pending = Opened(), Pending()
        async with Hosts(*kinds) as hosts:
            records = Records(hosts.ipv4, pending if ipv6 is None else ipv6)
            async with pool(get_dns_resolver=records, get_sock=opened) as request:
                task = asyncio.create_task(request(b'GET', hosts.url))
                await until(lambda: is_time(opened, pending))
                await turns(3)
                assert opened.still_open()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert task.cancelling() == 1
                assert opened.still_open() == []
                assert pending.ended == len(pending.waiters)

    async def time_out(kinds, ipv6, is_time):
        opened, pending = Opened(), Pending()
        async with Hosts(*kinds) as hosts:
            records = Records(hosts.ipv4, pending if ipv6 is None else ipv6)
            async with pool(get_dns_resolver=records, get_sock=opened) as request:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(None) as limit:
                        loop = asyncio.get_running_loop()

                        def look():
                            if is_time(opened, pending):
                                limit.reschedule(loop.time())
                            else:
                                loop.call_later(0.001, look)

                        look()
                        await request(b'GET', hosts.url)
                assert asyncio.current_task().cancelling() == 0
                assert opened.still_open() == []
                assert pending.ended == len(pending.waiters)

    table = {
        'with one attempt': (('silent',), None, lambda opened, pending: opened.socks),
        'with two attempts': (('silent', 'silent'), None, two_attempts),
        'with an attempt and a lookup': (('silent',), None, lookup_waits),
        'with a lookup alone': (('refusing', 'silent'), None, lookup_waits),
        'with attempts in both families': (
            ('silent', 'silent'), ['::ffff:127.0.0.1'],
            lambda opened, pending: len(opened.socks) == 3),
    }
    async with asyncio.TaskGroup() as group:
        group.create_task(rows(cancel, table))
        group.create_task(rows(time_out, table))


@on_loops_at_once
async def test_a_resolver_may_clean_up_when_a_race_is_cancelled():
    cleaned = []

    async def answer(host):
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0.001)
            cleaned.append(host)

    async with Hosts('silent') as hosts:
        records = Records(hosts.ipv4, answer)
        async with pool(get_dns_resolver=records) as request:
            task = asyncio.create_task(request(b'GET', hosts.url))
            await until(lambda: records.asked == ['A', 'AAAA'])
            await turns(3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert cleaned == ['name.test']


# A nameserver's time-out is at 0.4 seconds. The loop, blocked for 0.6, finds both due.
IN_THE_TICK = list(itertools.product((1, 2), (0.001, 0.5), (False, True)))


@on_loops
async def test_a_cancellation_in_the_tick_of_a_timeout_of_the_aaaa_lookup_wins(nameserver):
    """Whichever is first, with one nameserver or another one to go on with, and when it is
    `asyncio.timeout` that cancels."""
    loop = asyncio.get_running_loop()

    async def request_in(limit, request, url):
        async with limit:
            await request(b'GET', url)

    async with Hosts('silent') as hosts, contextlib.AsyncExitStack() as stack:
        started = []
        for number, (count, _, _) in enumerate(IN_THE_TICK):
            name = f'{number}.test'
            nameserver.answers[name] = hosts.ipv4
            nameserver.ipv6_answers[name] = None
            opened, limit = Opened(), asyncio.timeout(None)
            request = await stack.enter_async_context(pool(
                get_dns_resolver=asking(*[(0.4, nameserver.address)] * count), get_sock=opened))
            task = asyncio.create_task(request_in(limit, request, f'http://{name}:{hosts.port}/'))
            started.append((task, limit, opened))
        await until(lambda: nameserver.ipv6_queries.total() >= len(started))
        for (_, seconds, by_timeout), (task, limit, _) in zip(IN_THE_TICK, started, strict=True):
            if by_timeout:
                limit.reschedule(loop.time() + seconds)
            else:
                loop.call_later(seconds, task.cancel)
        time.sleep(0.6)
        for case, (task, _, opened) in zip(IN_THE_TICK, started, strict=True):
            with row(case):
                _, _, by_timeout = case
                with pytest.raises(TimeoutError if by_timeout else asyncio.CancelledError):
                    await task
                assert task.cancelling() == (0 if by_timeout else 1)
                assert opened.still_open() == []


@on_loops_at_once
async def test_a_cancellation_about_the_tick_in_which_an_attempt_succeeds_wins():
    async with contextlib.AsyncExitStack() as stack:
        started = []
        for with_lookup in (False, True):
            for number in range(5):
                hosts = await stack.enter_async_context(Hosts('silent', 'silent'))
                opened, pending = Opened(), Pending()
                records = Records(hosts.ipv4[:1] if with_lookup else hosts.ipv4, pending)
                request = await stack.enter_async_context(
                    pool(get_dns_resolver=records, get_sock=opened))
                task = asyncio.create_task(request(b'GET', hosts.url))
                started.append((number, hosts, opened, pending, task))
        await until(lambda: all(pending.waiters or len(opened.socks) == 2
                                for _, _, opened, pending, _ in started))
        for _, hosts, _, _, _ in started:
            await hosts.serve('127.0.0.1')
        for _, _, opened, _, _ in started:
            await connected(opened.socks[0])
        # Now the loop gets to see it.
        cancelled = set()
        for turn in range(5):
            for number, _, _, _, task in started:
                if number == turn and task.cancel():
                    cancelled.add(task)
            await asyncio.sleep(0)
        for number, _, opened, pending, task in started:
            with row(f'in turn {number}, {len(pending.waiters)} lookups'):
                [result] = await asyncio.gather(task, return_exceptions=True)
                # Only a loop that was quick enough had a response by one of the last turns.
                assert task in cancelled or number >= 3
                assert isinstance(result, asyncio.CancelledError) == (task in cancelled)
                assert task.cancelling() == (task in cancelled)
                assert opened.still_open() == ([] if task in cancelled else [0])
                assert pending.ended == len(pending.waiters)


# All failed


def late(seconds):
    return f'TimeoutError: socket_timeout, {seconds:g} seconds, passed'


UNREACHABLE = system_error(OSError, errno.ENETUNREACH)

# The A and the AAAA records, and what is said of each in its turn, with the causes.
RACE_FAILURES = {
    'one address refuses, and there is no other': (
        ['127.0.0.1'], no_address, {'127.0.0.1': REFUSED}, [ConnectionRefusedError]),
    'the other address is the same': (
        ['127.0.0.1'], ['127.0.0.1'], {'127.0.0.1': REFUSED}, [ConnectionRefusedError]),
    'both families refuse': (
        ['127.0.0.1', '127.0.0.2'], ['::1'],
        {'127.0.0.1': REFUSED, '127.0.0.2': REFUSED, '::1': REFUSED},
        [ConnectionRefusedError] * 3),
    'an IPv6 address refuses, and there is no other': (
        [], ['::1'], {'::1': REFUSED}, [ConnectionRefusedError]),
    'one refuses, one can not be reached': (
        ['224.0.0.1', '127.0.0.1'], ['ff02::1', '::1'],
        {'224.0.0.1': UNREACHABLE, '127.0.0.1': REFUSED, 'ff02::1': UNREACHABLE, '::1': REFUSED},
        [OSError, ConnectionRefusedError, OSError, ConnectionRefusedError]),
    'the nameserver fails for the AAAA records': (
        ['127.0.0.1'], raising(aiodnsresolver.DnsResponseCode, 2),
        {'127.0.0.1': REFUSED, 'AAAA records': 'server failure (SERVFAIL) (DnsResponseCode)'},
        [ConnectionRefusedError, aiodnsresolver.DnsResponseCode]),
    'the resolver fails for the AAAA records': (
        ['127.0.0.1'], raising(LookupError, 'none of these'),
        {'127.0.0.1': REFUSED, 'AAAA records': 'LookupError: none of these'},
        [ConnectionRefusedError, LookupError]),
}


@on_loops
async def test_the_error_names_each_address_with_its_reason():
    async with Hosts('refusing', 'refusing', ipv6='refusing') as hosts:
        for case, (ipv4, ipv6, reasons, causes) in RACE_FAILURES.items():
            with row(case):
                opened = Opened()
                async with pool(get_dns_resolver=Records(ipv4, ipv6), get_sock=opened) as request:
                    error = await failed(
                        request(b'GET', hosts.url + 'path?query'), HttpConnectionError,
                        causes[0] if len(causes) == 1 else ExceptionGroup,
                        f'GET {hosts.origin}: connecting failed: '
                        + '; '.join(f'{what}: {text}' for what, text in reasons.items()))
                assert (error.reused, error.response_started) == (False, False)
                assert opened.still_open() == []
                if len(causes) > 1:
                    group = error.__cause__
                    assert group.message == 'no address accepted a connection'
                    assert [type(cause) for cause in group.exceptions] == causes


# What the addresses do, the A and the AAAA records, socket_timeout, what is said of each, and
# the others that failed before.
LATE_PARTS = {
    'one is silent': (
        ('silent',), no_address, 0.4, {'127.0.0.1': late(0.4)}, type(None)),
    'some refuse, some are silent': (
        ('refusing', 'silent', 'silent', 'refusing'), ['::ffff:127.0.0.2'], 1.5,
        {'127.0.0.1': REFUSED, '127.0.0.4': REFUSED, '127.0.0.2': late(1.5),
         '127.0.0.3': late(1.5), str(IPv6Address('::ffff:127.0.0.2')): late(1.5)},
        ExceptionGroup),
    'the lookup of AAAA records is silent, the IPv4 address refused': (
        ('refusing',), None, 0.2, {'127.0.0.1': REFUSED, 'AAAA records': late(0.2)},
        ConnectionRefusedError),
    'the lookup of AAAA records and the IPv4 address are silent': (
        ('silent',), None, 1, {'127.0.0.1': late(1), 'AAAA records': late(1)}, type(None)),
}


@on_loops_at_once
async def test_the_error_after_socket_timeout_names_what_was_refused_and_what_was_pending():
    async def connect(kinds, ipv6, seconds, reasons, others):
        opened, pending = Opened(), Pending()
        async with Hosts(*kinds) as hosts:
            options = {'get_dns_resolver': Records(hosts.ipv4, pending if ipv6 is None else ipv6),
                       'get_sock': opened, 'socket_timeout': seconds}
            async with pool(**options) as request:
                error = await failed(
                    request(b'GET', hosts.url + 'path?query'), HttpConnectionError, TimeoutError,
                    f'GET {hosts.origin}: connecting failed: '
                    + '; '.join(f'{what}: {text}' for what, text in reasons.items()))
                assert type(error.__cause__.__cause__) is others
                assert opened.still_open() == []
                assert pending.ended == len(pending.waiters)

    await rows(connect, LATE_PARTS)


@on_clock
async def test_socket_timeout_is_for_the_lookup_connecting_and_tls_together():
    """What is left of it decreases."""
    async def resolve(host):
        await asyncio.sleep(0.7)
        return ['127.0.0.1', '127.0.0.2']

    async def resolve_ipv6(host):
        await asyncio.sleep(0.7)
        return ['::1']

    async def connect(ipv4, ipv6, kind, message):
        opened = Opened()
        async with Hosts('silent', 'mute', ipv6='mute') as hosts:
            options = {'get_dns_resolver': Records(ipv4, ipv6), 'get_sock': opened,
                       'socket_timeout': 1.5, 'get_ssl_context': trusting}
            async with pool(**options) as request:
                seconds, task = await measured(request(b'GET', f'https://name.test:{hosts.port}/'))
                await failed(
                    task, kind, TimeoutError,
                    message.format(f'GET https://name.test:{hosts.port}', port=hosts.port)
                    + late(1.5))
                assert seconds == 1.5
                assert opened.still_open() == []

    for name, args in {
            'slow records, a silent address, a silent handshake': (
                resolve, no_address, HttpTlsError,
                '{} (peer 127.0.0.2:{port}): the TLS handshake failed: '),
            'slow AAAA records, a silent handshake': (
                [], resolve_ipv6, HttpTlsError,
                '{} (peer [::1]:{port}): the TLS handshake failed: '),
            'AAAA records that are slow after a silent address': (
                ['127.0.0.1'], resolve_ipv6, HttpTlsError,
                '{} (peer [::1]:{port}): the TLS handshake failed: ')}.items():
        with row(name):
            await connect(*args)


# Zones


def link_local_address():
    """One of this machine, with the name of its interface."""
    with contextlib.suppress(OSError), open('/proc/net/if_inet6') as lines:
        for line in lines:
            digits, _, _, scope, _, name = line.split()
            if scope == '20':
                return IPv6Address(int(digits, 16)), name
    return pytest.skip('this machine has no link-local address')


@on_loops
async def test_a_link_local_address_is_connected_to_through_its_zone():
    address, name = link_local_address()
    index = socket.if_nametoindex(name)
    sock = socket.socket(socket.AF_INET6)
    sock.bind((str(address), 0, 0, index))
    answering = Answering(OK)
    async with ServerAt(sock, answering) as server:
        for zone in (name, index):
            with row(f'as literal, {zone}'):
                async with pool() as request:
                    for _ in range(2):
                        assert (await get(
                            request, f'http://[{address}%25{zone}]:{server.port}/'))[2] == b'ok'
            with row(f'as record, {zone}'):
                records = Records([], [f'{address}%{zone}'])
                async with pool(get_dns_resolver=records) as request:
                    for _ in range(2):
                        assert (await get(
                            request, f'http://name.test:{server.port}/'))[2] == b'ok'
        assert answering.connections == [0, 0, 1, 1, 2, 2, 3, 3]
        async with pool() as request:
            error = await failed(
                request(b'GET', f'http://[{address}]:{server.port}/'), HttpConnectionError,
                OSError)
            assert str(error).startswith(
                f'GET http://[{address}]:{server.port}: connecting failed: {address}: OSError: ')


@on_loops
async def test_an_address_of_an_unknown_zone_is_followed_by_the_next():
    async with Hosts(ipv6='serving') as hosts:
        for case, zones in {'before another': ('fe80::1%nosuch', '::1'),
                            'alone': ('fe80::1%nosuch',)}.items():
            with row(case):
                async with pool(get_dns_resolver=Records([], zones)) as request:
                    if '::1' in zones:
                        assert (await get(request, hosts.url))[2] == b'ok'
                        continue
                    error = await failed(
                        request(b'GET', hosts.url), HttpConnectionError, OSError)
                    assert str(error).startswith(
                        f'GET {hosts.origin}: connecting failed: fe80::1%nosuch: OSError: ')


# Reuse


# What the addresses do; then for each request in turn the A and the AAAA records, the address
# that serves it, and how many connections that address has had by then. The records are asked
# for each time. An IPv4-mapped address is an IPv6 one that leads to an IPv4 server.
MAPPED = '::ffff:127.0.0.2'

REUSE = {
    'IPv6, since IPv4 refuses': (('refusing',), [
        (['127.0.0.1'], ['::1'], '::1', 1),
        (['127.0.0.1'], ['::1'], '::1', 1),
        (['127.0.0.1'], [MAPPED, '::1'], '::1', 1)]),
    'IPv6, since IPv4 is silent': (('silent',), [
        (['127.0.0.1'], ['::1'], '::1', 1),
        (['127.0.0.1'], ['::1'], '::1', 1)]),
    'IPv6, when the A records are new': (('refusing', 'serving'), [
        (['127.0.0.1'], ['::1'], '::1', 1),
        (['127.0.0.2'], ['::1'], '::1', 1),
        ([], ['::1'], '::1', 1)]),
    'IPv6 alone': ((), [
        ([], ['::1'], '::1', 1),
        ([], ['::1'], '::1', 1)]),
    'not IPv6 with other AAAA records': (('refusing', 'serving'), [
        (['127.0.0.1'], ['::1'], '::1', 1),
        (['127.0.0.1'], [MAPPED], '127.0.0.2', 1),
        (['127.0.0.1'], [MAPPED], '127.0.0.2', 1),
        (['127.0.0.1'], ['::1'], '::1', 2)]),
    'not IPv6 without AAAA records': (('refusing', 'serving'), [
        (['127.0.0.1'], ['::1'], '::1', 1),
        (['127.0.0.2'], [], '127.0.0.2', 1),
        (['127.0.0.2'], ['::1'], '127.0.0.2', 1)]),
    'not IPv4 with other A records': (('serving', 'serving'), [
        (['127.0.0.1'], ['::1'], '127.0.0.1', 1),
        (['127.0.0.2'], ['::1'], '127.0.0.2', 1),
        (['127.0.0.1'], ['::1'], '127.0.0.1', 2)]),
    'not IPv4 without A records': (('serving',), [
        (['127.0.0.1'], ['::1'], '127.0.0.1', 1),
        ([], ['::1'], '::1', 1),
        ([], ['::1'], '::1', 1),
        (['127.0.0.1'], ['::1'], '::1', 1)]),
}


@on_loops_at_once
async def test_a_connection_is_reused_while_the_records_of_its_family_have_its_address():
    async def reuse(kinds, requests):
        opened = Opened()
        async with Hosts(*kinds, ipv6='serving') as hosts:
            records = Records([])
            async with pool(get_dns_resolver=records, get_sock=opened) as request:
                for number, (ipv4, ipv6, address, count) in enumerate(requests):
                    records.ipv4, records.ipv6 = ipv4, ipv6
                    with row(f'request {number}'):
                        assert (await get(request, hosts.url))[2] == b'ok'
                        assert hosts.used[number] == address
                        assert len(hosts.servers[address].peers) == count
                        # What is not current is closed, not kept.
                        assert len(opened.still_open()) == 1
                await until(lambda: len(hosts.ended) == sum(
                    len(server.peers) for server in hosts.servers.values()) - 1)

    await rows(reuse, REUSE)


@on_loops
async def test_the_aaaa_records_of_a_connection_are_asked_for_again_only_when_they_are_stale():
    async with Hosts('refusing', ipv6='serving') as hosts:
        records = Records(hosts.ipv4, ['::1'], seconds=3600)
        async with pool(get_dns_resolver=records) as request:
            for _ in range(3):
                await get(request, hosts.url)
            assert records.asked == ['A', 'AAAA']
        assert len(hosts.servers['::1'].peers) == 1
        records = Records(hosts.ipv4, ['::1'], seconds=0.05)
        async with pool(get_dns_resolver=records, min_ttl=0.05) as request:
            await get(request, hosts.url)
            while len(records.asked) < 6:
                await get(request, hosts.url)
                await asyncio.sleep(0.005)
            assert records.asked == ['A', 'AAAA'] * 3
        assert len(hosts.servers['::1'].peers) == 2


@on_loops
async def test_the_aaaa_records_are_not_asked_for_again_for_an_ipv4_connection():
    async with Hosts('serving', ipv6='serving') as hosts:
        records = Records([], ['::1'])
        async with pool(get_dns_resolver=records) as request:
            await get(request, hosts.url)
            records.ipv4, records.ipv6 = hosts.ipv4, []
            records.asked.clear()
            for _ in range(3):
                await get(request, hosts.url)
            assert records.asked == ['A', 'AAAA', 'A', 'A']
        assert hosts.used == ['::1', *['127.0.0.1'] * 3]


@on_loops
async def test_of_several_connections_those_to_old_addresses_are_closed():
    opened = Opened()
    async with Hosts('serving', 'serving', 'serving') as hosts:
        records = Records(hosts.ipv4)
        async with pool(get_dns_resolver=records, get_sock=opened) as request:
            await asyncio.gather(*(get(request, hosts.url) for _ in range(6)))
            assert len(opened.still_open()) == 6
            records.ipv4 = ['127.0.0.2']
            hosts.used.clear()
            await asyncio.gather(*(get(request, hosts.url) for _ in range(6)))
            assert hosts.used == ['127.0.0.2'] * 6
            await until(lambda: sorted(hosts.ended) == ['127.0.0.1'] * 2 + ['127.0.0.3'] * 2)
        assert len(hosts.servers['127.0.0.2'].peers) == 6


@on_loops
async def test_a_lookup_of_aaaa_records_that_failed_is_not_remembered():
    """The A records, which are fresh for long, lead nowhere."""
    async with Hosts('refusing', ipv6='serving') as hosts:
        records = Records(hosts.ipv4, ['::1'], seconds=0)
        async with pool(get_dns_resolver=records, min_ttl=0) as request:
            await get(request, hosts.url)
            records.seconds = 3600
            records.ipv6 = raising(aiodnsresolver.DnsResponseCode, 2)
            await failed(request(b'GET', hosts.url), HttpConnectionError, None)
            records.ipv6 = ['::1']
            assert (await get(request, hosts.url))[2] == b'ok'


@on_loops_at_once
async def test_a_request_to_the_same_host_takes_no_address_from_a_race():
    opened = Opened()
    async with Hosts('silent', 'silent', ipv6='serving') as hosts:
        records = Records(['127.0.0.1'], [MAPPED, '::1'])
        options = {'get_dns_resolver': records, 'get_sock': opened, 'socket_timeout': 3}
        async with pool(**options) as request:
            first = asyncio.create_task(get(request, hosts.url))
            await until(lambda: len(opened.socks) == 2)
            second = asyncio.create_task(get(request, hosts.url))
            assert (await first)[2] == (await second)[2] == b'ok'


# One lookup for all


def requests(number, request, url):
    return [asyncio.create_task(get(request, url)) for _ in range(number)]


async def outcomes(tasks):
    return await asyncio.gather(*tasks, return_exceptions=True)


@on_loops
async def test_requests_at_once_to_one_name_make_one_query(nameserver):
    gate = nameserver.gates['name.test'] = threading.Event()
    async with Hosts('refusing', ipv6='serving') as hosts:
        nameserver.ipv6_answers['name.test'] = ['::1']
        async with pool(get_dns_resolver=asking((PATIENCE, nameserver.address))) as request:
            tasks = requests(20, request, hosts.url)
            await until(lambda: nameserver.queries['name.test'])
            await turns(5)
            gate.set()
            assert {body for _, _, body in await asyncio.gather(*tasks)} == {b'ok'}
        assert hosts.used == ['::1'] * 20
    assert nameserver.queries == nameserver.ipv6_queries == {'name.test': 1}


# How many ask in the end, with what the first lookup makes of its answer, of A or AAAA records.
SHARED = list(itertools.product(('A', 'AAAA'), (
    'answered', 'failed', 'asker cancelled', 'askers cancelled', 'waiter cancelled',
    'asker cancelled in the same tick', 'waiter cancelled in the same tick')))


@on_loops
async def test_requests_share_a_lookup_even_when_one_of_them_is_cancelled():
    async def share(kind, case):
        pending = Pending()
        async with Hosts(*(['serving'] if kind == 'A' else []), ipv6='serving') as hosts:
            records = Records(pending, []) if kind == 'A' else Records([], pending)
            answer = hosts.ipv4 if kind == 'A' else ['::1']
            async with pool(get_dns_resolver=records) as request:
                tasks = requests(8, request, hosts.url)
                await until(lambda: pending.waiters)
                await turns(5)
                asked = 1
                cancelled = []
                if case == 'failed':
                    pending.waiters[0].set_exception(LookupError('no answer'))
                elif case == 'askers cancelled':
                    # After the first, the one that came last asks.
                    for asked, asker in (2, 0), (3, -1), (4, -1):
                        cancelled.append(tasks.pop(asker))
                        cancelled[-1].cancel()
                        await until(lambda: len(pending.waiters) == asked)  # noqa: B023
                elif case != 'answered':
                    cancelled = [tasks.pop(3 if 'waiter' in case else 0)]
                    if 'same tick' in case:
                        pending.waiters[-1].set_result(answer)
                    cancelled[0].cancel()
                    if 'asker' in case:
                        asked = 2
                        await until(lambda: len(pending.waiters) == 2)
                if not pending.waiters[-1].done():
                    pending.waiters[-1].set_result(answer)
                results = await outcomes(tasks)
                for task in cancelled:
                    with pytest.raises(asyncio.CancelledError):
                        await task
                    assert task.cancelling() == 1
                if case == 'failed':
                    for error in results:
                        assert (type(error), str(error)) == (
                            HttpDnsError, f'GET {hosts.origin}: resolving name.test failed: '
                            'LookupError: no answer')
                        assert type(error.__cause__) is LookupError
                else:
                    assert [body for _, _, body in results] == [b'ok'] * len(tasks)
                assert [task.cancelling() for task in tasks] == [0] * len(tasks)
                assert records.asked.count(kind) == len(pending.waiters) == asked
                assert pending.ended == asked

    await rows(share, {f'{kind} records, {case}': (kind, case) for kind, case in SHARED})


@on_loops
async def test_races_at_once_share_a_lookup_of_aaaa_records():
    async def share(is_cancelled):
        opened, pending = Opened(), Pending()
        async with Hosts('refusing', ipv6='serving') as hosts:
            records = Records(hosts.ipv4, pending, seconds=3600)
            async with pool(get_dns_resolver=records, get_sock=opened) as request:
                tasks = requests(8, request, hosts.url)
                await until(lambda: len(opened.socks) == 8 and not opened.still_open())
                await turns(5)
                if is_cancelled:
                    tasks.pop(0).cancel()
                    await until(lambda: len(pending.waiters) == 2)
                pending.waiters[-1].set_result(['::1'])
                assert {body for _, _, body in await asyncio.gather(*tasks)} == {b'ok'}
                assert (await get(request, hosts.url))[2] == b'ok'
            assert records.asked == ['A', 'AAAA', *['AAAA'] * is_cancelled]
            assert pending.ended == len(pending.waiters)

    await rows(share, {'to their end': (False,), 'the first is cancelled': (True,)})


@on_loops_at_once
async def test_a_request_whose_time_is_over_takes_no_other_with_it():
    """The lookup is its own. One that waits for the answer, with time left, asks again."""
    pending = Pending()
    async with Hosts('serving') as hosts:
        options = {'get_dns_resolver': Records(pending), 'socket_timeout': 0.6}
        async with pool(**options) as request:
            [first] = requests(1, request, hosts.url)
            await until(lambda: pending.waiters)
            await asyncio.sleep(0.3)
            [second] = requests(1, request, hosts.url)
            error = await failed(first, HttpDnsError, TimeoutError)
            assert str(error).endswith('resolving name.test failed: ' + late(0.6))
            await until(lambda: len(pending.waiters) == 2)
            pending.waiters[1].set_result(hosts.ipv4)
            assert (await second)[2] == b'ok'


@on_loops
async def test_a_failure_of_the_resolver_is_not_remembered():
    async with Hosts('serving', ipv6='serving') as hosts:
        records = Records(hosts.ipv4, ['::1'])
        options = {'get_dns_resolver': records, 'keep_alive_timeout': 0, 'min_ttl': 0}
        async with pool(**options) as request:
            for case, failure in {
                    'a response code': raising(aiodnsresolver.DnsResponseCode, 2),
                    'no record': no_address, 'an error': raising(OSError, 'down'),
                    'a time-out': raising(aiodnsresolver.DnsTimeout)}.items():
                with row(case):
                    records.ipv4, records.ipv6 = failure, failure
                    await failed(request(b'GET', hosts.url), HttpDnsError, None)
                    records.ipv4, records.ipv6 = hosts.ipv4, []
                    assert (await get(request, hosts.url))[2] == b'ok'


class Truncating(Nameserver):
    """Says of each response that it does not have all records. Its response to cut.test is
    longer than a resolver takes."""

    def resolve(self, request, handler):
        reply = super().resolve(request, handler)
        reply.header.tc = 1
        handler.server.udplen = 0  # what is too long is left so
        return reply


TRUNCATED_ANSWERS = {
    'empty.test': (aiodnsresolver.DnsNoMatchingAnswers,
                   'the name has no address (DnsNoMatchingAnswers)'),
    'cut.test': (TimeoutError, 'TimeoutError: no nameserver answered in the time that the '
                 'resolver gives'),
}


@on_loops_at_once
async def test_a_truncated_answer_is_as_good_as_the_addresses_in_it():
    server = Truncating()
    try:
        server.answers = {'name.test': ['127.0.0.1'], 'empty.test': [],
                          'cut.test': [f'127.0.0.{number}' for number in range(1, 50)]}
        async with Hosts('serving') as hosts:
            async with pool(get_dns_resolver=asking((0.2, server.address))) as request:
                assert (await get(request, hosts.url))[2] == b'ok'
                for name, (cause, text) in TRUNCATED_ANSWERS.items():
                    with row(name):
                        await failed(
                            request(b'GET', f'http://{name}:{hosts.port}/'), HttpDnsError, cause,
                            f'GET http://{name}:{hosts.port}: resolving {name} failed: {text}')
    finally:
        server.stop()


# The records of A and AAAA, and what becomes of both.
NO_ADDRESS_AT_ALL = {
    'no such name': ('NXDOMAIN', 'NXDOMAIN', aiodnsresolver.DnsRecordDoesNotExist,
                     'there is no such name (DnsRecordDoesNotExist)', 1, 1),
    'no records of either kind': ([], [], aiodnsresolver.DnsNoMatchingAnswers,
                                  'the name has no address (DnsNoMatchingAnswers)', 1, 1),
    'no A, AAAA fails': ([], 'SERVFAIL', aiodnsresolver.DnsResponseCode,
                         'server failure (SERVFAIL) (DnsResponseCode)', 1, 1),
    'no A, AAAA is silent': (
        [], None, TimeoutError,
        'TimeoutError: no nameserver answered in the time that the resolver gives', 1, 1),
    'A fails, no AAAA': ('SERVFAIL', [], aiodnsresolver.DnsResponseCode,
                         'server failure (SERVFAIL) (DnsResponseCode)', 1, 1),
    'A fails, AAAA is silent': ('SERVFAIL', None, aiodnsresolver.DnsResponseCode,
                                'server failure (SERVFAIL) (DnsResponseCode)', 1, 1),
    'A is silent, no AAAA': (
        None, [], TimeoutError,
        'TimeoutError: no nameserver answered in the time that the resolver gives', 1, 1),
}


@on_loops
async def test_a_name_without_an_address_of_either_family_is_an_error(nameserver):
    async def ask(name, ipv4, ipv6, cause, text, queries, ipv6_queries):
        nameserver.answers[name] = ipv4
        nameserver.ipv6_answers[name] = ipv6
        seconds = 0.5 if None in (ipv4, ipv6) else 10
        async with pool(get_dns_resolver=asking((seconds, nameserver.address))) as request:
            await failed(request(b'GET', f'http://{name}/'), HttpDnsError, cause,
                         f'GET http://{name}:80: resolving {name} failed: {text}')
        assert nameserver.queries[name] == queries
        assert nameserver.ipv6_queries[name] == ipv6_queries

    await rows(ask, {case: (f'{number}.test', *rest)
                     for number, (case, rest) in enumerate(NO_ADDRESS_AT_ALL.items())})


# The socket


@contextlib.contextmanager
def client_socket(peer):
    """A view of the client's end of a connection: it is in this process."""
    address = peer.writer.get_extra_info('peername')
    for fd in map(int, os.listdir('/dev/fd')):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                with socket.socket(fileno=os.dup(fd)) as sock:
                    if sock.getsockname() == address:
                        yield sock
                        return
    raise AssertionError('its client is not in this process')


@on_loops
async def test_a_connection_sends_at_once_and_probes_a_peer_that_is_silent():
    async with Server(Answering(OK)) as server, pool() as request:
        await get(request, server.url)
        with client_socket(server.peers[0]) as sock:
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            if hasattr(socket, 'TCP_KEEPIDLE'):
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60


@on_loops
async def test_a_lookup_that_blocks_the_loop_for_all_of_the_time_leaves_none_to_connect():
    async def resolve(host):
        time.sleep(0.05)
        return [IPv4Address('127.0.0.1')]

    async with pool(get_dns_resolver=resolving(resolve), socket_timeout=0.02) as request:
        await failed(
            request(b'GET', 'http://name.test:1/'), HttpConnectionError, TimeoutError,
            'GET http://name.test:1: connecting failed: no address was tried: TimeoutError: '
            'socket_timeout, 0.02 seconds, passed')
