"""DNS as production has it: the files of the machine, nameservers that are late, dead or wrong,
answers that are truncated, that rotate or that change, and what a pool remembers of all that.

Most of it is on a clock that stands, with a nameserver and a website on the loop of the test.
"""

import asyncio
import collections
import contextlib
import gc
import ipaddress
import itertools
import logging
import os
import struct
import weakref

import aiodnsresolver
import dnslib
import pytest

import lowhaio
from lowhaio import HttpConnectionError, HttpDnsError, Pool
from tests.harness import (
    NXDOMAIN,
    OK,
    REFUSED,
    REFUSED_REPLY,
    SERVFAIL,
    SILENCE,
    Answering,
    NameFiles,
    Reply,
    ScriptedNameserver,
    Server,
    ServerAtEach,
    asking,
    cancelling,
    certified,
    failed,
    forever,
    found,
    get,
    measured,
    nameservers_of,
    on_clock,
    on_loops,
    on_one_loop,
    one_by_one,
    open_descriptors,
    passing,
    pool,
    resolving,
    rotating,
    row,
    run_until,
    settling,
    trusting,
    turns,
    until,
)


class Lan:
    """A website at some addresses, a nameserver, and the files of a machine that asks that."""

    def __init__(self, tmp_path, *addresses, refusing=(), nameservers=('127.0.0.1',), hosts='',
                 options=''):
        self.tmp_path = tmp_path
        self.web = ServerAtEach(*addresses or ('127.0.0.1', '127.0.0.2'), refusing=refusing)
        self.nameserver = ScriptedNameserver(*nameservers)
        self.answers = self.nameserver.answers
        self.hosts = hosts
        self.options = options

    async def __aenter__(self):
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self.web)
            await stack.enter_async_context(self.nameserver)
            self.stack = stack.pop_all()
        self.files = NameFiles(self.tmp_path, self.nameserver, self.hosts,
                               nameservers_of(self.nameserver) + self.options)
        return self

    async def __aexit__(self, *error):
        await self.stack.__aexit__(*error)

    def pool(self, **options):
        return pool(**{'get_dns_resolver': self.files.get_dns_resolver, **options})

    def get(self, request, host='name.test'):
        return get(request, f'http://{host}:{self.web.port}/')

    async def used(self, request, host='name.test'):
        """Make a request, and return the address that it went to."""
        before = len(self.web.used)
        assert (await self.get(request, host))[2] == b'ok'
        assert len(self.web.used) == before + 1
        return self.web.used[-1]

    async def fails(self, request, cause, text=None, host='name.test'):
        """Make a request whose lookup fails, and return the error."""
        return await failed(
            self.get(request, host), HttpDnsError, cause,
            text and f'GET http://{host}:{self.web.port}: resolving {host} failed: {text}')


async def times(seconds, awaitable):
    """What is awaited ends after so many seconds of a clock that stands. Returns its result."""
    taken, task = await measured(awaitable)
    try:
        return await task
    finally:
        assert taken == seconds


def warnings_of(caplog):
    """Those of the resolver and of the core. (In debug mode, asyncio has its own.)"""
    return [record.getMessage() for record in caplog.records
            if record.levelno >= logging.WARNING and record.name in ('aiodnsresolver', 'lowhaio')]


def stale_warnings_of(caplog):
    """Those that tell that old addresses are used. The failure of each try is told beside them."""
    return [text for text in warnings_of(caplog) if 'Its last addresses are used' in text]


class OwnResolver:
    """A `get_dns_resolver` of which each resolver has its own answer, which it returns for ever.

    `answer` is called with the number of the resolver and the name when that is asked for first.
    """

    def __init__(self, answer):
        self.answer = answer
        self.made = 0
        self.asked = []
        self.cleared = []

    def __call__(self, get_logger_adapter):
        number = self.made
        self.made += 1
        kept = {}

        async def resolve(host, kind, get_logger_adapter):
            self.asked.append((number, host, kind.name))
            if kind == aiodnsresolver.TYPES.AAAA:
                raise aiodnsresolver.DnsNoMatchingAnswers()
            if host not in kept:
                kept[host] = self.answer(number, host)
            return kept[host]

        async def clear_cache(get_logger_adapter):
            self.cleared.append(len(self.asked))

        return resolve, clear_cache


def lasting(address, seconds):
    """An address that is fresh for some seconds from now on."""
    kind = aiodnsresolver.IPv6AddressExpiresAt if ':' in address else \
        aiodnsresolver.IPv4AddressExpiresAt
    return kind(address, expires_at=asyncio.get_running_loop().time() + seconds)


# ------------------------------------------------------------------- answers are not kept too long


LOST = {'a lost reply': SILENCE, 'SERVFAIL': SERVFAIL, 'REFUSED': REFUSED_REPLY}


@pytest.mark.parametrize('case', LOST)
@pytest.mark.parametrize('is_default', [True, False], ids=['default', 'own'])
@on_clock
async def test_an_answer_after_a_failed_try_ends_at_its_ttl(tmp_path, case, is_default):
    """On CPython 3.12 and later, aiodnsresolver keeps it until garbage is collected."""
    gc.disable()
    try:
        async with Lan(tmp_path) as lan:
            lan.answers['name.test', 'A'] = one_by_one(LOST[case], found('127.0.0.1', ttl=1))
            address = ('127.0.0.1', lan.nameserver.port)
            options = {} if is_default else {
                'get_dns_resolver': asking((0.5, address), (0.5, address))}
            async with lan.pool(**options) as request:
                _, task = await measured(lan.used(request))
                assert await task == '127.0.0.1'
                for second in range(1, 4):
                    new = f'127.0.0.{1 + second % 2}'
                    lan.answers['name.test', 'A'] = found(new, ttl=1)
                    await passing(1.001)
                    assert await lan.used(request) == new
    finally:
        gc.enable()


@on_clock
async def test_an_answer_that_was_over_when_it_was_asked_for_is_asked_of_a_new_resolver():
    """Whatever the resolver keeps for too long."""
    own = OwnResolver(lambda number, host: [lasting(f'127.0.0.{1 + number}', 2)])
    async with (ServerAtEach('127.0.0.1', '127.0.0.2', '127.0.0.3') as web,
                pool(get_dns_resolver=own) as request):
        for resolvers, asked in ((1, 1), (2, 3), (3, 5)):
            await get(request, f'http://name.test:{web.port}/')
            assert web.used[-1] == f'127.0.0.{resolvers}'
            assert own.made == resolvers
            assert len(own.asked) == asked
            await passing(2.001)


@on_clock
async def test_a_resolver_whose_answers_are_always_over_is_asked_once_more_each_time():
    own = OwnResolver(lambda number, host: [lasting('127.0.0.1', -5)])
    async with ServerAtEach('127.0.0.1') as web, pool(get_dns_resolver=own) as request:
        for lookups in (1, 2, 3):
            await get(request, f'http://name.test:{web.port}/')
            assert len(own.asked) == 2 * lookups
            await get(request, f'http://name.test:{web.port}/')  # within min_ttl
            assert len(own.asked) == 2 * lookups
            await passing(1)
    assert own.made <= 4


@on_clock
async def test_an_address_from_the_hosts_file_of_aiodnsresolver_is_not_over():
    """It expires at 0, which is no time of the loop."""
    own = OwnResolver(lambda number, host: [
        aiodnsresolver.IPv4AddressExpiresAt('127.0.0.1', expires_at=0)])
    async with ServerAtEach('127.0.0.1') as web, pool(get_dns_resolver=own) as request:
        for lookups in (1, 2):
            await get(request, f'http://name.test:{web.port}/')
            assert len(own.asked) == lookups
            await passing(1)
    assert own.made == 1


@on_clock
async def test_a_resolver_that_is_replaced_is_told_to_clear_its_cache():
    """Or the timers of what it keeps would last as long as that."""
    own = OwnResolver(lambda number, host: [lasting('127.0.0.1', 2)])
    async with (ServerAtEach('127.0.0.1') as web, pool(get_dns_resolver=own) as request):
        await get(request, f'http://name.test:{web.port}/')
        assert own.cleared == []
        await passing(2.001)
        await get(request, f'http://name.test:{web.port}/')
        assert own.made == 2
        assert len(own.cleared) == 1


@on_clock
async def test_an_answer_of_ttl_0_is_not_taken_for_one_that_was_over():
    own = OwnResolver(lambda number, host: [lasting('127.0.0.1', 0)])
    async with (ServerAtEach('127.0.0.1') as web, pool(get_dns_resolver=own) as request):
        await get(request, f'http://name.test:{web.port}/')
    assert own.asked == [(0, 'name.test', 'A')]


# ---------------------------------------------------------------------------------- the file hosts


# What the file says, the name of a request, and the address that it goes to, or None where the
# nameserver is asked.
HOSTS = {
    'a name': ('127.0.0.2 a.test', 'a.test', '127.0.0.2'),
    'capitals in the file': ('127.0.0.2 MyHost', 'myhost', '127.0.0.2'),
    'capitals in the URL': ('127.0.0.2 myhost', 'MYHOST', '127.0.0.2'),
    'capitals in both': ('127.0.0.2 MyHOST.Test', 'mYhost.tEST', '127.0.0.2'),
    'several names': ('127.0.0.2 a.test b.test  c.test', 'c.test', '127.0.0.2'),
    'tabs': ('127.0.0.2\ta.test\t\tb.test', 'b.test', '127.0.0.2'),
    'spaces before it': ('  \t127.0.0.2 a.test', 'a.test', '127.0.0.2'),
    'CRLF': ('127.0.0.3 other.test\r\n127.0.0.2 a.test\r\n', 'a.test', '127.0.0.2'),
    'only IPv6': ('::1 a.test', 'a.test', '::1'),
    'both, IPv6 first': ('::1 a.test\n127.0.0.2 a.test', 'a.test', '127.0.0.2'),
    'a comment after it': ('127.0.0.2 a.test # for a test', 'a.test', '127.0.0.2'),
    'a comment at its end': ('127.0.0.2 a.test#b.test', 'a.test', '127.0.0.2'),
    'in a comment': ('#127.0.0.2 a.test', 'a.test', None),
    'a latin-1 comment before it': (b'# caf\xe9\n127.0.0.2 a.test\n', 'a.test', '127.0.0.2'),
    'a latin-1 comment after it': (b'127.0.0.2 a.test # caf\xe9\n', 'a.test', '127.0.0.2'),
    'a latin-1 name before it': (b'127.0.0.3 caf\xe9\n127.0.0.2 a.test\n', 'a.test', '127.0.0.2'),
    'a BOM at another line': ('\ufeff127.0.0.3 b.test\n127.0.0.2 a.test', 'a.test', '127.0.0.2'),
    'no end of line': ('\n\n127.0.0.2 a.test', 'a.test', '127.0.0.2'),
    'an address without a name before it': ('127.0.0.3\n127.0.0.2 a.test', 'a.test', '127.0.0.2'),
    'half of a name': ('127.0.0.2 a.test', 'b.a.test', None),
    'an empty file': ('', 'a.test', None),
    'a dot at the end in the URL': ('127.0.0.2 a.test', 'a.test.', '127.0.0.2'),
    'a name in other letters': ('127.0.0.2 xn--bcher-kva.test', 'b\u00fccher.test', '127.0.0.2'),
}


@on_loops
async def test_names_in_the_file_hosts(tmp_path):
    async with Lan(tmp_path, '127.0.0.1', '127.0.0.2', '127.0.0.3', '::1') as lan:
        for name in ('a.test', 'b.a.test'):
            lan.answers[name] = found('127.0.0.1')
        for case, (content, name, address) in HOSTS.items():
            with row(case):
                lan.files.write_hosts(content)
                lan.nameserver.queries.clear()
                async with lan.pool() as request:
                    assert await lan.used(request, name) == (address or '127.0.0.1')
                assert len(lan.nameserver.queries) == (address is None)


@on_clock
async def test_all_lines_of_a_name_count(tmp_path):
    hosts = '127.0.0.1 a.test\n127.0.0.2 b.test A.Test\n127.0.0.3 a.test\n'
    async with Lan(tmp_path, '127.0.0.1', '127.0.0.2', '127.0.0.3', hosts=hosts) as lan:
        async with lan.pool(keep_alive_timeout=0) as request:
            used = [await lan.used(request, 'a.test') for _ in range(6)]
            first = used[0]
        # In the order of the lines, from any of them on.
        order = ['127.0.0.1', '127.0.0.2', '127.0.0.3'] * 3
        start = order.index(first)
        assert used == order[start:start + 6]
        assert lan.nameserver.queries == []


@on_loops
async def test_both_families_of_a_name_are_decided_by_the_file(tmp_path):
    """As with getaddrinfo: a name with only an IPv4 address there has no IPv6 address."""
    hosts = '127.0.0.2 a.test\n127.0.0.2 both.test\n::1 both.test\n'
    async with Lan(tmp_path, '::1', refusing=['127.0.0.2'], hosts=hosts) as lan:
        lan.answers['a.test'] = found('::1')
        async with lan.pool() as request:
            await failed(lan.get(request, 'a.test'), HttpConnectionError, ConnectionRefusedError)
            assert await lan.used(request, 'both.test') == '::1'
        assert lan.nameserver.queries == []


BAD_LINES = {
    'too short an address': '127.1 a.test',
    'no address': 'localhost a.test',
    'too long an address': '1.2.3.4.5 a.test',
    'a port': '127.0.0.1:80 a.test',
    'brackets': '[::1] a.test',
    'a BOM': '\ufeff127.0.0.3 a.test',
    'zeros': '127.000.000.001 a.test',
}


@on_loops
async def test_a_line_without_an_address_is_skipped_with_a_warning(tmp_path, caplog):
    async with Lan(tmp_path) as lan:
        lan.answers['a.test'] = found('127.0.0.1')
        for case, line in BAD_LINES.items():
            with row(case):
                caplog.clear()
                lan.files.write_hosts(f'# first\n127.0.0.2 b.test\n{line}\n127.0.0.2 c.test\n')
                async with lan.pool() as request:
                    for name, address in (('b.test', '127.0.0.2'), ('c.test', '127.0.0.2'),
                                          ('a.test', '127.0.0.1')):
                        assert await lan.used(request, name) == address
                [warning] = warnings_of(caplog)
                assert f'{lan.files.hosts}, line 3' in warning
                assert repr(line.split()[0]) in warning


@on_clock
async def test_bad_lines_are_told_once_for_each_change_of_the_file(tmp_path, caplog):
    async with Lan(tmp_path, hosts='127.1 a.test\n127.0.0.2 b.test\nx y\n') as lan:
        lan.answers['name.test'] = found('127.0.0.1', ttl=1)
        async with lan.pool() as request:
            for _ in range(5):
                assert await lan.used(request, 'b.test') == '127.0.0.2'
                assert await lan.used(request) == '127.0.0.1'
                await passing(1.001)
            assert len(warnings_of(caplog)) == 2
            lan.files.write_hosts('127.0.0.1 b.test\nx y\n')
            assert await lan.used(request, 'b.test') == '127.0.0.1'
            assert len(warnings_of(caplog)) == 3


@on_clock
async def test_no_file_hosts_is_an_empty_one(tmp_path, caplog):
    async with Lan(tmp_path) as lan:
        lan.files.hosts.unlink()
        lan.answers['name.test'] = found('127.0.0.1', ttl=1)
        async with lan.pool() as request:
            assert await lan.used(request) == '127.0.0.1'
            await passing(1.001)
            lan.files.write_hosts('127.0.0.2 name.test')
            assert await lan.used(request) == '127.0.0.2'
            await passing(1.001)
            lan.files.hosts.unlink()
            assert await lan.used(request) == '127.0.0.1'
    assert warnings_of(caplog) == []


@on_loops
async def test_a_file_that_can_not_be_read_is_named_by_the_error(tmp_path):
    async with Lan(tmp_path) as lan:
        lan.answers['name.test'] = found('127.0.0.1')
        for path in (lan.files.hosts, lan.files.resolv_conf):
            content = path.read_text()
            path.unlink()
            path.mkdir()
            async with lan.pool() as request:
                error = await lan.fails(request, IsADirectoryError)
                assert str(path) in str(error)
                path.rmdir()
                path.write_text(content)


@on_clock
async def test_a_change_of_hosts_is_noticed_within_a_second_and_looked_for_once_a_second(tmp_path):
    def write_in_place(address):
        lan.files.write_hosts(f'{address} a.test')

    def replace(address):
        new = lan.files.hosts.with_name('new')
        new.write_text(f'{address} a.test')
        os.utime(new, (0, 1))
        new.rename(lan.files.hosts)

    for write in (write_in_place, replace):
        with row(write.__name__):
            hosts = '127.0.0.1 a.test b.test'
            async with Lan(tmp_path, hosts=hosts) as lan, lan.pool() as request:
                assert await lan.used(request, 'a.test') == '127.0.0.1'
                write('127.0.0.2')
                await passing(0.99)
                # Nobody has looked, so a request costs nothing more.
                for name in ('a.test', 'b.test'):
                    assert await lan.used(request, name) == '127.0.0.1'
                await passing(0.01)
                assert await lan.used(request, 'a.test') == '127.0.0.2'
                assert lan.nameserver.queries == []


@on_clock
async def test_a_name_that_leaves_the_file_is_asked_of_the_nameserver(tmp_path):
    async with Lan(tmp_path, hosts='127.0.0.1 a.test') as lan, lan.pool() as request:
        lan.answers['a.test'] = found('127.0.0.2', ttl=10)
        assert await lan.used(request, 'a.test') == '127.0.0.1'
        lan.files.write_hosts('')
        await passing(1)
        assert await lan.used(request, 'a.test') == '127.0.0.2'
        # And the other way round, once the answer is over.
        lan.files.write_hosts('127.0.0.1 a.test')
        await passing(10.001)
        assert await lan.used(request, 'a.test') == '127.0.0.1'
        assert lan.nameserver.asked() == [('a.test', 'A')]


@on_clock
async def test_a_name_in_hosts_is_kept_over_an_unchanged_file(tmp_path):
    """One connection serves all requests, however long it takes."""
    async with Lan(tmp_path, hosts='127.0.0.2 a.test') as lan, lan.pool() as request:
        for _ in range(30):
            assert await lan.used(request, 'a.test') == '127.0.0.2'
            await passing(0.7)
        assert lan.web.connections == ['127.0.0.2']


# -------------------------------------------------------------------------------------- localhost


LOCALHOST = ('localhost', 'LOCALHOST', 'a.localhost', 'A.b.LocalHost', 'localhost.')


@on_loops
async def test_localhost_never_leaves_the_machine(tmp_path):
    for case, addresses, refusing, used in (
            ('both', ('127.0.0.1', '::1'), (), '127.0.0.1'),
            ('only IPv6', ('::1',), ('127.0.0.1',), '::1')):
        async with Lan(tmp_path, *addresses, refusing=refusing) as lan:
            lan.files.write_resolv_conf('')
            for name in LOCALHOST:
                with row(f'{case}, {name}'):
                    lan.answers[name.lower().rstrip('.')] = found('127.0.0.9', '::9')
                    async with lan.pool() as request:
                        assert await lan.used(request, name) == used
            assert lan.nameserver.queries == []


@on_loops
async def test_localhost_may_be_another_address_by_the_file_hosts(tmp_path):
    hosts = '127.0.0.2 localhost a.localhost'
    async with Lan(tmp_path, hosts=hosts) as lan, lan.pool() as request:
        assert await lan.used(request, 'localhost') == '127.0.0.2'
        assert await lan.used(request, 'a.localhost') == '127.0.0.2'
        assert await lan.used(request, 'b.localhost') == '127.0.0.1'


@on_loops
async def test_names_that_only_look_like_localhost_are_asked_for(tmp_path):
    async with Lan(tmp_path) as lan, lan.pool() as request:
        for name in ('notlocalhost', 'localhost.test'):
            lan.answers[name] = found('127.0.0.2')
            assert await lan.used(request, name) == '127.0.0.2'
        assert lan.nameserver.asked() == [('notlocalhost', 'A'), ('localhost.test', 'A')]


@on_loops
async def test_a_resolver_of_the_callers_is_asked_for_localhost_too(tmp_path):
    async with Lan(tmp_path) as lan:
        lan.answers['localhost'] = found('127.0.0.2')
        own = asking((5, ('127.0.0.1', lan.nameserver.port)))
        async with lan.pool(get_dns_resolver=own) as request:
            assert await lan.used(request, 'localhost') == '127.0.0.2'


# ---------------------------------------------------------------------------------------- min_ttl


# The options, the TTL, and the seconds for which an answer lasts.
MIN_TTL = {
    'TTL 0': ({}, 0, 1),
    'TTL 1': ({}, 1, 1),
    'TTL 3': ({}, 3, 3),
    'min_ttl of 5, TTL 0': ({'min_ttl': 5}, 0, 5),
    'min_ttl of 5, TTL 4': ({'min_ttl': 5}, 4, 5),
    'min_ttl of 5, TTL 6': ({'min_ttl': 5}, 6, 6),
    'min_ttl of a quarter, TTL 0': ({'min_ttl': 0.25}, 0, 0.25),
    'min_ttl of 0, TTL 1': ({'min_ttl': 0}, 1, 1),
}


@pytest.mark.parametrize('is_default', [True, False], ids=['default', 'own'])
@on_clock
async def test_an_answer_lasts_for_its_ttl_and_for_min_ttl(tmp_path, is_default):
    for case, (options, ttl, seconds) in MIN_TTL.items():
        with row(case):
            async with Lan(tmp_path) as lan:
                own = {} if is_default else {
                    'get_dns_resolver': asking((5, ('127.0.0.1', lan.nameserver.port)))}
                lan.answers['name.test'] = found('127.0.0.1', ttl=ttl)
                async with lan.pool(**options, **own) as request:
                    for lookups in (1, 2, 3):
                        await lan.get(request)
                        await passing(seconds / 2)
                        await lan.get(request)
                        await passing(seconds / 2 - 0.001)
                        await lan.get(request)
                        assert lan.nameserver.asked() == [('name.test', 'A')] * lookups
                        await passing(0.001)
                assert lan.web.connections == ['127.0.0.1']


@on_clock
async def test_a_min_ttl_of_0_asks_for_each_request(tmp_path):
    async with Lan(tmp_path) as lan, lan.pool(min_ttl=0) as request:
        lan.answers['name.test'] = found('127.0.0.1', ttl=0)
        for _ in range(3):
            await lan.get(request)
        lan.answers['name.test'] = found('127.0.0.2', ttl=0)
        assert await lan.used(request) == '127.0.0.2'
        assert lan.nameserver.times() == [0, 0, 0, 0]


@on_clock
async def test_plain_addresses_are_asked_for_each_time_whatever_min_ttl_says():
    async def resolve(host):
        asked.append(host)
        return [ipaddress.ip_address('127.0.0.1')]

    asked = []
    async with (ServerAtEach('127.0.0.1') as web,
                pool(get_dns_resolver=resolving(resolve), min_ttl=60) as request):
        for _ in range(3):
            await get(request, f'http://name.test:{web.port}/')
    assert len(asked) == 3


# ------------------------------------------------------------------------------------------ tries


# How late the nameserver is; when it is asked for A records; when the request ends.
LATE = {
    'not': (0, [0], 0),
    'by 0.4 seconds': (0.4, [0], 0.4),
    'by 0.6 seconds': (0.6, [0, 0.5], 1.1),
    'by 1.2 seconds': (1.2, [0, 0.5, 1.5], 2.7),
    'by 3 seconds': (3, [0, 0.5, 1.5, 3.5], 6.5),
}


@pytest.mark.parametrize('case', LATE)
@on_clock
async def test_a_nameserver_that_is_late_is_heard(tmp_path, case):
    late, asked, seconds = LATE[case]
    async with Lan(tmp_path) as lan, lan.pool() as request:
        lan.answers['name.test'] = found('127.0.0.1', late=late)
        assert await times(seconds, lan.used(request)) == '127.0.0.1'
        assert lan.nameserver.times(kind='A') == asked


# The options of resolv.conf, how many nameservers there are, when which of them is asked for A
# records, and when the last of them has had its time. AAAA records are asked for beside them, a
# quarter of a second later.
TRIES = {
    'one nameserver': ('', 1, [(0, 1), (0.5, 1), (1.5, 1), (3.5, 1)], 7.5),
    'two': ('', 2, [(0, 1), (0.5, 2), (1, 1), (2, 2), (3, 1), (5, 2), (7, 1)], 10),
    'three': ('', 3, [(0, 1), (0.5, 2), (1, 3), (1.5, 1), (2.5, 2), (3.5, 3), (4.5, 1), (6.5, 2),
                      (8.5, 3)], 10),
    'four, of which three count': ('', 4, [
        (0, 1), (0.5, 2), (1, 3), (1.5, 1), (2.5, 2), (3.5, 3), (4.5, 1), (6.5, 2), (8.5, 3)], 10),
    'timeout': ('options timeout:1', 1, [(0, 1), (1, 1), (2, 1), (3, 1)], 4),
    'timeout, two': ('options timeout:1', 2, [
        (0, 1), (1, 2), (2, 1), (3, 2), (4, 1), (5, 2), (6, 1), (7, 2)], 8),
    'attempts and timeout': ('options timeout:2 attempts:2', 1, [(0, 1), (2, 1)], 4),
    'in two lines': ('options timeout:2\noptions attempts:2', 1, [(0, 1), (2, 1)], 4),
    'attempts': ('options attempts:2', 1, [(0, 1), (2, 1)], 6),
    'one attempt': ('options attempts:1', 1, [(0, 1)], 4),
    'five attempts': ('options attempts:9', 1, [(0, 1), (0.5, 1), (1.5, 1), (3.5, 1), (7.5, 1)],
                      10),
    'five attempts, of a second': ('options attempts:9 timeout:1', 1, [
        (0, 1), (1, 1), (2, 1), (3, 1), (4, 1)], 5),
    'no attempt': ('options attempts:0', 1, [(0, 1)], 4),
    'a timeout of 0': ('options timeout:0', 1, [(0, 1), (0.5, 1), (1.5, 1), (3.5, 1)], 7.5),
    'bad values': ('options timeout:x attempts: ndots timeout:-1 unknown:3 attempts:2.5', 1,
                   [(0, 1), (0.5, 1), (1.5, 1), (3.5, 1)], 7.5),
}


@pytest.mark.parametrize('case', TRIES)
@on_clock
async def test_silent_nameservers_are_asked_in_rounds(tmp_path, case):
    options, count, tries, seconds = TRIES[case]
    addresses = [f'127.0.0.{number}' for number in range(1, count + 1)]
    async with Lan(tmp_path, nameservers=addresses, options=options) as lan:
        lan.answers['name.test'] = SILENCE
        async with lan.pool() as request:
            await times(min(seconds + 0.25, 10), lan.fails(request, TimeoutError))
        assert [(query.time, int(query.at[-1])) for query in lan.nameserver.matching(kind='A')] \
            == tries


@on_clock
async def test_socket_timeout_ends_the_tries(tmp_path):
    async with Lan(tmp_path) as lan, lan.pool(socket_timeout=2) as request:
        lan.answers['name.test'] = SILENCE
        await times(2, lan.fails(request, TimeoutError))
        assert lan.nameserver.times(kind='A') == [0, 0.5, 1.5]


# ------------------------------------------------------------------- the order of the nameservers


FIRST_FAILS = {
    'silent': (SILENCE, 0.5), 'SERVFAIL': (SERVFAIL, 0), 'REFUSED': (REFUSED_REPLY, 0),
    'NOTIMP': (Reply(rcode='NOTIMP'), 0), 'a port that refuses': (None, 0),
}


@pytest.mark.parametrize('case', FIRST_FAILS)
@on_clock
async def test_the_nameserver_that_answered_last_is_asked_first(tmp_path, case):
    reply, seconds = FIRST_FAILS[case]
    async with Lan(tmp_path, nameservers=['127.0.0.1', '127.0.0.2']) as lan:
        server = lan.nameserver
        if reply is None:
            server.refuse('127.0.0.1')
        else:
            server.answers_at['127.0.0.1'] = reply
        for number in range(4):
            lan.answers[f'{number}.test'] = found('127.0.0.1')
        async with lan.pool() as request:
            await times(seconds, lan.get(request, '0.test'))
            for number in (1, 2):
                await times(0, lan.get(request, f'{number}.test'))
            at_first = server.times(at='127.0.0.1', kind='A')
            assert at_first == ([] if reply is None else [0])
            assert server.asked(at='127.0.0.2', kind='A') == [
                (f'{number}.test', 'A') for number in range(3)]
            # Then the second fails, and the first works again.
            server.answers_at = {'127.0.0.2': SILENCE}
            if reply is None:
                server.listen('127.0.0.1')
            await times(0.5, lan.get(request, '3.test'))
            assert server.asked(at='127.0.0.1', kind='A')[-1] == ('3.test', 'A')


@on_clock
async def test_a_short_name_of_ttl_0_does_not_make_it_forget_which_nameserver_answers(tmp_path):
    async with Lan(tmp_path, nameservers=['127.0.0.1', '127.0.0.2'],
                   options='search a.test') as lan:
        lan.nameserver.answers_at['127.0.0.1'] = SILENCE
        lan.answers['api.a.test'] = found('127.0.0.1', ttl=0)
        async with lan.pool(min_ttl=0) as request:
            await times(0.5, lan.get(request, 'api'))
            for _ in range(3):
                await passing(0.1)
                await times(0, lan.get(request, 'api'))


@pytest.mark.parametrize('addresses', [('127.0.0.1', '::1'), ('::1', '127.0.0.1')],
                         ids=['IPv4 first', 'IPv6 first'])
@on_clock
async def test_nameservers_may_be_of_both_families(tmp_path, addresses):
    async with Lan(tmp_path, nameservers=addresses) as lan, lan.pool() as request:
        lan.nameserver.answers_at[addresses[0]] = SILENCE
        lan.answers['name.test'] = found('127.0.0.1')
        await times(0.5, lan.get(request))
        assert [query.at for query in lan.nameserver.matching(kind='A')] == list(addresses)


@on_clock
async def test_with_rotate_each_lookup_begins_at_the_next_nameserver(tmp_path):
    addresses = ['127.0.0.1', '127.0.0.2', '127.0.0.3']
    async with Lan(tmp_path, nameservers=addresses, options='options rotate') as lan:
        async with lan.pool() as request:
            for number in range(7):
                lan.answers[f'{number}.test'] = found('127.0.0.1')
                await lan.get(request, f'{number}.test')
        order = [query.at for query in lan.nameserver.queries]
        start = addresses.index(order[0])
        assert order == (addresses * 4)[start:start + 7]


@on_clock
async def test_a_nameserver_that_is_no_longer_in_the_file_may_still_answer(tmp_path):
    """The file changes while it is asked. Then the new ones are asked."""
    async with Lan(tmp_path, nameservers=['127.0.0.1', '127.0.0.2']) as lan:
        lan.answers['slow.test'] = found('127.0.0.1', late=0.2)
        lan.answers['other.test'] = found('127.0.0.1')
        async with lan.pool() as request:
            slow = asyncio.create_task(lan.get(request, 'slow.test'))
            await passing(0.1)
            lan.files.write_resolv_conf('nameserver 127.0.0.2\n')
            assert await lan.used(request, 'other.test') == '127.0.0.1'
            await passing(0.1)
            assert (await slow)[2] == b'ok'
        assert [(query.name, query.at) for query in lan.nameserver.queries] == [
            ('slow.test', '127.0.0.1'), ('other.test', '127.0.0.2')]


@on_clock
async def test_without_rotate_all_lookups_ask_the_first_nameserver(tmp_path):
    async with Lan(tmp_path, nameservers=['127.0.0.1', '127.0.0.2', '::1']) as lan:
        async with lan.pool() as request:
            for number in range(5):
                lan.answers[f'{number}.test'] = found('127.0.0.1')
                await lan.get(request, f'{number}.test')
        assert {query.at for query in lan.nameserver.queries} == {'127.0.0.1'}


@on_clock
async def test_nameservers_have_ipv6_addresses_too(tmp_path):
    async with Lan(tmp_path, nameservers=['::1']) as lan, lan.pool() as request:
        lan.answers['name.test'] = found('127.0.0.1')
        assert await lan.used(request) == '127.0.0.1'


# -------------------------------------------------------------------------------------- truncation


MANY = [f'127.0.0.{number}' for number in range(1, 41)]


@pytest.mark.parametrize('count', [30, 31, 40])
@pytest.mark.parametrize('is_cut_to_fit', [False, True], ids=['no records', 'some records'])
@on_clock
async def test_a_truncated_reply_is_asked_for_by_tcp(tmp_path, count, is_cut_to_fit):
    async with Lan(tmp_path, *MANY, nameservers=['127.0.0.1', '127.0.0.2']) as lan:
        lan.answers['name.test'] = found(*MANY[:count], is_cut_to_fit=is_cut_to_fit)
        async with lan.pool(keep_alive_timeout=0) as request:
            for _ in range(count):
                await lan.get(request)
        assert sorted(lan.web.used) == sorted(MANY[:count])
        assert [(query.time, query.at, query.kind, query.by)
                for query in lan.nameserver.queries] == [
            (0, '127.0.0.1', 'A', 'UDP'), (0, '127.0.0.1', 'A', 'TCP')][:1 + (count > 30)]


@pytest.mark.parametrize('nameserver', ['127.0.0.1', '::1'])
@pytest.mark.parametrize('tcp', ['answers', 'in pieces'])
@on_clock
async def test_two_thousand_addresses_come_by_tcp(tmp_path, tcp, nameserver):
    async with Lan(tmp_path, '127.0.0.1', nameservers=[nameserver]) as lan:
        lan.nameserver.tcp = tcp
        lan.answers['name.test'] = found(
            '127.0.0.1', *(f'127.9.{first}.{last}' for first in range(10) for last in range(200)))
        async with lan.pool() as request:
            used = asyncio.create_task(lan.used(request))
            await passing(0.1)
            assert await used == '127.0.0.1'
        assert [query.by for query in lan.nameserver.queries] == ['UDP', 'TCP']


@on_clock
async def test_a_long_chain_of_aliases_is_asked_for_by_tcp(tmp_path):
    aliases = tuple(f'{"x" * 60}.{number}.test' for number in range(8))
    async with Lan(tmp_path) as lan, lan.pool() as request:
        lan.answers['name.test'] = found('127.0.0.1', aliases=aliases)
        assert await lan.used(request) == '127.0.0.1'
        assert [query.by for query in lan.nameserver.queries] == ['UDP', 'TCP']


@on_clock
async def test_a_long_reply_is_taken_as_it_is_if_it_is_not_truncated(tmp_path):
    """Some nameservers do not care about the 512 bytes of UDP."""
    def whole(data):
        record = dnslib.DNSRecord.parse(data)
        record.header.tc = 0
        record.add_answer(*found(*MANY).records('name.test', 'A'))
        return [record.pack()]

    async with Lan(tmp_path, *MANY) as lan, lan.pool() as request:
        lan.answers['name.test'] = found(*MANY, datagrams=whole)
        assert await lan.used(request) in MANY
        assert [query.by for query in lan.nameserver.queries] == ['UDP']


# The records of a reply whose question ends at the 27th byte.
MANY_LABELS = {
    'in a name': [b'\1a' * 300 + b'\0'],
    'in all names': [b'\1a' * 100 + b'\0', *100 * [b'\xc0\x1b']],
}


@pytest.mark.parametrize('case', MANY_LABELS)
@on_clock
async def test_a_reply_of_too_many_labels_is_not_taken(tmp_path, case):
    def with_long_names(data):
        assert data.index(b'\0', 12) + 5 == 27
        records = [name + struct.pack('!HHLH', 1, 1, 60, 4) + bytes((127, 0, 0, 1))
                   for name in MANY_LABELS[case]]
        return [data[:6] + struct.pack('!H', len(records)) + data[8:27] + b''.join(records)]

    async with Lan(tmp_path) as lan, lan.pool() as request:
        lan.answers['name.test', 'A'] = found('127.0.0.1', datagrams=with_long_names)
        lan.answers['name.test', 'AAAA'] = Reply()
        seconds, task = await measured(lan.get(request))
        assert seconds == 7.5
        await failed(task, HttpDnsError, TimeoutError)


# What TCP does, how many seconds a request takes if there are addresses in the truncated reply,
# and how many queries there are and what it fails with if there are none. After two failures that
# come at once, a nameserver is not asked again.
NO_TCP = {
    'refuses': (
        0, 2, aiodnsresolver.DnsError, 'the reply of nameserver 127.0.0.1 was truncated, and it '
        'can not be had by TCP: ConnectionRefusedError: [Errno 111] Connection refused '
        '(DnsError)'),
    'closes': (
        0, 2, aiodnsresolver.DnsError, 'the reply of nameserver 127.0.0.1 was truncated, and it '
        'can not be had by TCP: the connection was closed (DnsError)'),
    'silent': (
        0.5, 4, TimeoutError, 'TimeoutError: no answer from nameserver 127.0.0.1 in 0.5 s, by TCP '
        'too, 127.0.0.1 in 1 s, by TCP too, 127.0.0.1 in 2 s, by TCP too, 127.0.0.1 in 4 s, by '
        'TCP too'),
}


@pytest.mark.parametrize('tcp', NO_TCP)
@on_clock
async def test_what_is_in_a_truncated_reply_is_used_where_tcp_does_not_work(tmp_path, tcp):
    seconds, queries, cause, words = NO_TCP[tcp]
    async with Lan(tmp_path, '127.0.0.1', '127.0.0.2') as lan:
        lan.nameserver.tcp = tcp
        if tcp == 'refuses':
            lan.nameserver.refuse_tcp()
        addresses = [f'127.0.0.{1 + number % 2}' for number in range(100)]
        lan.answers['name.test'] = found(*addresses, is_cut_to_fit=True)
        lan.answers['none.test', 'A'] = found(*addresses)
        lan.answers['none.test', 'AAAA'] = Reply()
        async with lan.pool() as request:
            took, task = await measured(lan.used(request))
            assert await task in ('127.0.0.1', '127.0.0.2')
            assert took == seconds
            _, task = await measured(lan.get(request, 'none.test'))
            await failed(task, HttpDnsError, cause, f'GET http://none.test:{lan.web.port}: '
                         f'resolving none.test failed: {words}')
        assert len(lan.nameserver.asked(
            name='name.test', kind='A', by='UDP')) == 1 + (tcp == 'silent')
        assert len(lan.nameserver.asked(name='none.test', kind='A', by='UDP')) == queries


@on_clock
async def test_a_truncated_reply_is_asked_for_again_in_its_turn_when_that_is_lost(tmp_path):
    async with Lan(tmp_path, *MANY) as lan, lan.pool() as request:
        lan.answers['name.test'] = one_by_one(found(*MANY), SILENCE, found(*MANY))
        seconds, task = await measured(lan.used(request))
        assert await task in MANY
        assert seconds <= 1


# ------------------------------------------------------------------------------ replies of others


def with_other_id(data):
    return (int.from_bytes(data[:2]) ^ 1).to_bytes(2) + data[2:]


# What a nameserver, or somebody who knows its address, sends in place of a reply.
NO_REPLIES = {
    'another number': with_other_id,
    'another number, SERVFAIL': lambda data: with_other_id(data)[:3] + b'\x82' + data[4:],
    'nothing': lambda data: b'',
    'a part of the head': lambda data: data[:11],
    'a part': lambda data: data[:-9],
    'another question': lambda data: data.replace(b'\x04', b'\x05', 1),
    'letters of another case': lambda data: data.swapcase(),
    'an address of three bytes': lambda data: data[:-6] + b'\x00\x03' + data[-4:-1],
    'an address of no byte': lambda data: data[:-6] + b'\x00\x00',
}


@pytest.mark.parametrize('case', NO_REPLIES)
@on_clock
async def test_what_is_no_reply_to_the_query_is_ignored(tmp_path, case):
    change = NO_REPLIES[case]
    name = f'{"name" * 15}.test'
    async with Lan(tmp_path) as lan:
        lan.answers[name, 'A'] = found('127.0.0.1', datagrams=lambda data: [change(data), data])
        async with lan.pool() as request:
            assert await times(0, lan.used(request, name)) == '127.0.0.1'
        lan.answers[name, 'A'] = one_by_one(
            found('127.0.0.2', datagrams=lambda data: [change(data)]), found('127.0.0.1'))
        lan.answers[name, 'AAAA'] = Reply()
        async with lan.pool() as request:
            assert await times(0.5, lan.used(request, name)) == '127.0.0.1'


@pytest.mark.parametrize('length', [0, 1, 3, 11, 12, 40, 600])
@on_clock
async def test_what_is_no_reply_by_tcp_is_a_try_without_an_answer(tmp_path, length):
    async with Lan(tmp_path, *MANY) as lan, lan.pool() as request:
        whole, cut = found(*MANY), found(*MANY, datagrams=lambda data: [data[:length]])
        lan.answers['name.test', 'A'] = one_by_one(whole, cut, whole)
        lan.answers['name.test', 'AAAA'] = Reply()
        seconds, task = await measured(lan.used(request))
        assert await task in MANY
        assert seconds <= 0.5


@on_clock
async def test_a_flood_of_what_is_no_reply_leaves_the_loop_to_others(tmp_path):
    async def take_turns():
        while True:
            taken.append(None)
            await asyncio.sleep(0)

    async with Lan(tmp_path) as lan, lan.pool() as request:
        lan.answers['name.test', 'A'] = found(
            '127.0.0.1', datagrams=lambda data: 100 * [with_other_id(data)] + [data])
        taken = []
        task = asyncio.ensure_future(take_turns())
        await lan.get(request)
        task.cancel()
    assert len(taken) > 100


@pytest.mark.parametrize('ttl', [2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1])
@on_loops
async def test_any_ttl_is_taken(tmp_path, ttl):
    async with Lan(tmp_path) as lan, lan.pool() as request:
        lan.answers['name.test'] = found('127.0.0.1', ttl=ttl)
        for _ in range(2):
            assert await lan.used(request) == '127.0.0.1'
        assert len(lan.nameserver.queries) == 1


# ----------------------------------------------------------------------------------------- aliases


@on_clock
async def test_a_chain_of_aliases_that_is_whole_in_a_reply_needs_one_query(tmp_path):
    async with Lan(tmp_path) as lan, lan.pool() as request:
        lan.answers['name.test'] = found('127.0.0.2', aliases=('b.test', 'c.test', 'd.test'))
        assert await lan.used(request) == '127.0.0.2'
        assert lan.nameserver.asked() == [('name.test', 'A')]


@on_clock
async def test_a_chain_of_aliases_over_several_replies(tmp_path):
    async with Lan(tmp_path) as lan, lan.pool() as request:
        lan.answers['name.test'] = Reply(aliases=('b.test', 'c.test'))
        lan.answers['b.test'] = lan.answers['c.test'] = Reply(aliases=('D.test',))
        lan.answers['d.test'] = found('127.0.0.2')
        assert await lan.used(request) == '127.0.0.2'
        assert len(lan.nameserver.queries) <= 4
        assert lan.nameserver.asked()[-1] == ('d.test', 'A')


@on_clock
async def test_an_alias_ends_as_soon_as_the_first_of_its_records(tmp_path):
    async with Lan(tmp_path) as lan, lan.pool() as request:
        lan.answers['name.test'] = Reply(aliases=('b.test',), ttl=2)
        lan.answers['b.test'] = found('127.0.0.1', ttl=300)
        assert await lan.used(request) == '127.0.0.1'
        await passing(1.999)
        lan.answers['name.test'] = Reply(aliases=('c.test',), ttl=2)
        lan.answers['c.test'] = found('127.0.0.2', ttl=300)
        assert await lan.used(request) == '127.0.0.1'
        await passing(0.001)
        assert await lan.used(request) == '127.0.0.2'


# The TTLs of two aliases and of the address, all in one reply.
TTLS = {'the first alias': (2, 300, 300), 'the second alias': (300, 2, 300),
        'the address': (300, 300, 2)}


@pytest.mark.parametrize('case', TTLS)
@on_clock
async def test_a_chain_in_one_reply_ends_as_soon_as_the_first_of_its_records(tmp_path, case):
    *alias_ttls, ttl = TTLS[case]
    async with Lan(tmp_path) as lan, lan.pool() as request:
        chain = {'aliases': ('b.test', 'c.test'), 'alias_ttls': alias_ttls, 'ttl': ttl}
        lan.answers['name.test'] = found('127.0.0.1', **chain)
        assert await lan.used(request) == '127.0.0.1'
        lan.answers['name.test'] = found('127.0.0.2', **chain)
        await passing(1.999)
        assert await lan.used(request) == '127.0.0.1'
        await passing(0.001)
        assert await lan.used(request) == '127.0.0.2'
        assert len(lan.nameserver.queries) == 2


@on_clock
async def test_an_alias_of_a_name_with_only_ipv6(tmp_path):
    async with Lan(tmp_path, '::1') as lan, lan.pool() as request:
        lan.answers['name.test'] = found('::1', aliases=('b.test',))
        lan.answers['b.test'] = found('::1')
        assert await times(0, lan.used(request)) == '::1'


LOOPS_OF_ALIASES = {
    'in one reply': {'name.test': ('b.test', 'name.test'), 'b.test': ('name.test', 'b.test')},
    'over two': {'name.test': ('b.test',), 'b.test': ('name.test',)},
    'of itself': {'name.test': ('name.test',)},
}


@pytest.mark.parametrize('case', LOOPS_OF_ALIASES)
@on_clock
async def test_aliases_that_go_round_are_an_error(tmp_path, case):
    async with Lan(tmp_path) as lan, lan.pool() as request:
        for name, aliases in LOOPS_OF_ALIASES[case].items():
            lan.answers[name] = Reply(aliases=aliases)
        await times(0, lan.fails(request, aiodnsresolver.DnsCnameChainTooLong))
        assert len(lan.nameserver.queries) <= 8


@on_clock
async def test_an_address_at_the_end_of_aliases_that_go_round_is_not_used(tmp_path):
    """A name that is an alias has no other records (RFC 1034 3.6.2)."""
    async with Lan(tmp_path) as lan, lan.pool() as request:
        lan.answers['name.test'] = found('127.0.0.1', aliases=('b.test', 'name.test'))
        await times(0, lan.fails(request, aiodnsresolver.DnsCnameChainTooLong))


# ---------------------------------------------------------------------------- resolv.conf, search


KUBERNETES = ('search shop.svc.cluster.local svc.cluster.local cluster.local\n'
              'options ndots:5\n')

# resolv.conf, the name of a request, what exists, and which names are asked for.
SEARCH = {
    'Kubernetes, a service': (
        KUBERNETES, 'api', 'api.shop.svc.cluster.local', ['api.shop.svc.cluster.local']),
    'Kubernetes, with a namespace': (
        KUBERNETES, 'api.default', 'api.default.svc.cluster.local',
        ['api.default.shop.svc.cluster.local', 'api.default.svc.cluster.local']),
    'Kubernetes, elsewhere': (
        KUBERNETES, 'example.com', 'example.com',
        ['example.com.shop.svc.cluster.local', 'example.com.svc.cluster.local',
         'example.com.cluster.local', 'example.com']),
    'Kubernetes, five dots': (
        KUBERNETES, 'a.b.c.d.example.com', 'a.b.c.d.example.com', ['a.b.c.d.example.com']),
    'Kubernetes, five dots, and a domain': (
        KUBERNETES, 'a.b.c.d.e.f', 'a.b.c.d.e.f.cluster.local',
        ['a.b.c.d.e.f', 'a.b.c.d.e.f.shop.svc.cluster.local', 'a.b.c.d.e.f.svc.cluster.local',
         'a.b.c.d.e.f.cluster.local']),
    'no search': ('', 'api', 'api', ['api']),
    'ndots of 1': ('search corp.test', 'api', 'api.corp.test', ['api.corp.test']),
    'ndots of 1, a dot': ('search corp.test', 'api.lab', 'api.lab.corp.test',
                          ['api.lab', 'api.lab.corp.test']),
    'ndots of 1, a dot, itself': ('search corp.test', 'api.lab', 'api.lab', ['api.lab']),
    'no dot, itself': ('search corp.test', 'api', 'api', ['api.corp.test', 'api']),
    'ndots of 0': ('search corp.test\noptions ndots:0', 'api', 'api.corp.test',
                   ['api', 'api.corp.test']),
    'the last search counts': ('search a.test\nsearch b.test', 'api', 'api.b.test',
                               ['api.b.test']),
    'a domain': ('domain corp.test', 'api', 'api.corp.test', ['api.corp.test']),
    'a search after a domain': ('domain a.test\nsearch b.test', 'api', 'api.b.test',
                                ['api.b.test']),
    'a domain after a search': ('search b.test c.test\ndomain a.test', 'api', 'api.a.test',
                                ['api.a.test']),
    'capitals': ('search CORP.Test', 'API', 'api.corp.test', ['api.corp.test']),
    'dots at the ends': ('search corp.test. other.test.', 'api', 'api.other.test',
                         ['api.corp.test', 'api.other.test']),
    'six domains at most': (
        'search a.test b.test c.test d.test e.test f.test g.test', 'api', 'api',
        ['api.a.test', 'api.b.test', 'api.c.test', 'api.d.test', 'api.e.test', 'api.f.test',
         'api']),
    'comments': ('# search a.test\n; search b.test\nsearch corp.test', 'api', 'api.corp.test',
                 ['api.corp.test']),
    'CRLF and tabs': ('search\tcorp.test\r\noptions\tndots:2\r\n', 'api.lab',
                      'api.lab.corp.test', ['api.lab.corp.test']),
    'a bad ndots': ('search corp.test\noptions ndots:many', 'api.lab', 'api.lab', ['api.lab']),
    'an unknown word': ('searches a.test\nlookup file\nsearch corp.test', 'api',
                        'api.corp.test', ['api.corp.test']),
    'bytes that are no text': (b'# caf\xe9\nsearch corp.test', 'api', 'api.corp.test',
                               ['api.corp.test']),
}


@on_loops
async def test_names_are_searched_as_resolv_conf_says(tmp_path):
    async with Lan(tmp_path) as lan:
        for case, (content, name, existing, asked) in SEARCH.items():
            with row(case):
                lan.answers.clear()
                lan.answers[existing] = found('127.0.0.2')
                lan.nameserver.queries.clear()
                lan.web.heads.clear()
                if isinstance(content, str):
                    content = content.encode()
                lan.files.write_resolv_conf(
                    nameservers_of(lan.nameserver).encode() + content + b'\n')
                async with lan.pool() as request:
                    for _ in range(3):
                        assert await lan.used(request, name) == '127.0.0.2'
                assert lan.nameserver.asked() == [(name, 'A') for name in asked]
                # What the server sees is what the caller wrote.
                assert b'\r\nhost: %s:%d\r\n' % (name.lower().encode(), lan.web.port) \
                    in lan.web.heads[0]


TWO_DOMAINS = 'search a.test b.test\n'


@on_clock
async def test_the_first_domain_in_which_a_name_has_an_address_of_any_kind_counts(tmp_path):
    """As with getaddrinfo: IPv6 in the first domain is before IPv4 in the second."""
    async with (Lan(tmp_path, '127.0.0.1', '::1', options=TWO_DOMAINS) as lan,
                lan.pool() as request):
        lan.answers['api.a.test'] = found('::1')
        lan.answers['api.b.test'] = found('127.0.0.1')
        assert await times(0, lan.used(request, 'api')) == '::1'
        assert {name for name, _ in lan.nameserver.asked()} == {'api.a.test'}


@on_clock
async def test_a_name_without_an_address_in_a_domain_is_looked_for_in_the_next(tmp_path):
    async with Lan(tmp_path, options=TWO_DOMAINS) as lan, lan.pool() as request:
        lan.answers['api.a.test'] = Reply()
        lan.answers['api.b.test'] = found('127.0.0.2')
        assert await lan.used(request, 'api') == '127.0.0.2'
        assert lan.nameserver.asked() == [
            ('api.a.test', 'A'), ('api.a.test', 'AAAA'), ('api.b.test', 'A')]


@pytest.mark.parametrize('reply', [SERVFAIL, REFUSED_REPLY], ids=['SERVFAIL', 'REFUSED'])
@on_clock
async def test_a_failure_in_one_domain_is_an_error_only_if_the_name_is_found_in_none(
        tmp_path, reply):
    async with Lan(tmp_path, options=TWO_DOMAINS) as lan, lan.pool() as request:
        lan.answers['api.a.test'] = lan.answers['bad.a.test'] = reply
        lan.answers['api.b.test'] = found('127.0.0.2')
        assert await times(0, lan.used(request, 'api')) == '127.0.0.2'
        await times(0, lan.fails(request, aiodnsresolver.DnsResponseCode, host='bad'))
        assert ('bad.b.test', 'A') in lan.nameserver.asked()
        assert ('bad', 'A') in lan.nameserver.asked()


@on_clock
async def test_silence_in_one_domain_is_the_error(tmp_path):
    """If it were not, a name would be another one while the nameserver is ill."""
    async with Lan(tmp_path, options=TWO_DOMAINS) as lan, lan.pool() as request:
        lan.answers['api.a.test'] = SILENCE
        lan.answers['api.b.test'] = found('127.0.0.2')
        await times(7.75, lan.fails(request, TimeoutError, host='api'))
        assert {name for name, _ in lan.nameserver.asked()} == {'api.a.test'}


@on_clock
async def test_a_name_that_is_nowhere_is_asked_for_once_in_each_domain(tmp_path):
    """For both kinds: some nameservers say that a name does not exist if it has not the one."""
    async with Lan(tmp_path, options=KUBERNETES) as lan, lan.pool() as request:
        await lan.fails(request, aiodnsresolver.DnsRecordDoesNotExist, host='api')
        names = ['api.shop.svc.cluster.local', 'api.svc.cluster.local', 'api.cluster.local', 'api']
        assert lan.nameserver.asked() == [
            (name, kind) for kind in ('A', 'AAAA') for name in names]


@on_clock
async def test_a_name_that_would_be_too_long_with_a_domain_is_asked_for_without(tmp_path):
    name = '.'.join(['x' * 49] * 5) + '.xyz'  # 253 characters
    assert len(name) == 253
    async with Lan(tmp_path, options=KUBERNETES + 'options ndots:9') as lan:
        lan.answers[name] = found('127.0.0.2')
        async with lan.pool() as request:
            assert await lan.used(request, name) == '127.0.0.2'
        assert lan.nameserver.asked() == [(name, 'A')]


@on_clock
async def test_a_full_name_has_253_characters_at_most(tmp_path):
    name = '.'.join(['x' * 47] * 5)
    domain = 'y' * 13
    assert len(f'{name}.{domain}') == 253
    async with Lan(tmp_path, options=f'search {domain}y {domain}\noptions ndots:9') as lan:
        lan.answers[f'{name}.{domain}'] = found('127.0.0.2')
        async with lan.pool() as request:
            assert await lan.used(request, name) == '127.0.0.2'
        assert lan.nameserver.asked() == [(f'{name}.{domain}', 'A')]


@pytest.mark.parametrize('ttl', [0, 300])
@on_clock
async def test_the_full_name_is_remembered_for_the_other_kind(tmp_path, ttl):
    async with Lan(tmp_path, '::1', refusing=['127.0.0.1'], options=KUBERNETES) as lan:
        lan.answers['api.cluster.local'] = found('127.0.0.1', '::1', ttl=ttl)
        async with lan.pool() as request:
            assert await lan.used(request, 'api') == '::1'
        assert lan.nameserver.asked() == [
            ('api.shop.svc.cluster.local', 'A'), ('api.svc.cluster.local', 'A'),
            ('api.cluster.local', 'A'), ('api.cluster.local', 'AAAA')]


@on_clock
async def test_a_name_that_appears_in_an_earlier_domain_is_found_after_the_ttl(tmp_path):
    async with Lan(tmp_path, options=TWO_DOMAINS) as lan, lan.pool() as request:
        lan.answers['api.b.test'] = found('127.0.0.1', ttl=5)
        assert await lan.used(request, 'api') == '127.0.0.1'
        lan.answers['api.a.test'] = found('127.0.0.2', ttl=5)
        await passing(5.001)
        assert await lan.used(request, 'api') == '127.0.0.2'


@on_loops
async def test_tls_is_for_the_name_in_the_url_and_not_for_the_full_one(tmp_path):
    names = []
    context = certified('api')
    context.sni_callback = lambda sock, name, context: names.append(name)
    async with (Lan(tmp_path, options=KUBERNETES) as lan,
                Server(Answering(OK), context) as server,
                lan.pool(get_ssl_context=trusting) as request):
        lan.answers['api.svc.cluster.local'] = found('127.0.0.1')
        assert (await get(request, f'https://api:{server.port}/'))[2] == b'ok'
    assert names == ['api']


# ----------------------------------------------------------------------- resolv.conf, its changes


@on_clock
async def test_a_change_of_resolv_conf_is_noticed_at_the_next_lookup(tmp_path):
    async with Lan(tmp_path, nameservers=['127.0.0.1', '127.0.0.2']) as lan, lan.pool() as request:
        lan.files.write_resolv_conf('nameserver 127.0.0.1\n')
        names = (f'{number}.test' for number in itertools.count())

        async def asked_at(search=''):
            lan.nameserver.queries.clear()
            name = next(names)
            lan.answers[name + search] = found('127.0.0.1')
            await lan.get(request, name)
            return [(query.at, query.name) for query in lan.nameserver.queries]

        assert await asked_at() == [('127.0.0.1', '0.test')]
        lan.files.write_resolv_conf('nameserver 127.0.0.2\n')
        assert await asked_at() == [('127.0.0.2', '1.test')]
        new = lan.files.resolv_conf.with_name('new')
        new.write_text('nameserver 127.0.0.1\nsearch lan\noptions ndots:2')
        new.rename(lan.files.resolv_conf)
        assert await asked_at('.lan') == [('127.0.0.1', '2.test.lan')]
        # A search list that has gone from the file is no longer used.
        lan.files.write_resolv_conf('nameserver 127.0.0.2\noptions ndots:2\n')
        assert await asked_at() == [('127.0.0.2', '3.test')]


@on_clock
async def test_a_full_name_of_another_search_list_is_not_asked_for_any_more(tmp_path):
    async with Lan(tmp_path, '::1', refusing=['127.0.0.1'], options='search a.test') as lan:
        lan.answers['api.a.test', 'A'] = found('127.0.0.1')
        lan.answers['api.a.test', 'AAAA'] = SERVFAIL
        lan.answers['api.b.test'] = found('::1')
        async with lan.pool() as request:
            await failed(lan.get(request, 'api'), HttpConnectionError, ExceptionGroup)
            lan.files.write_resolv_conf('nameserver 127.0.0.1\nsearch b.test')
            assert await lan.used(request, 'api') == '::1'


@on_clock
async def test_a_fresh_answer_needs_no_resolv_conf(tmp_path):
    async with Lan(tmp_path) as lan, lan.pool() as request:
        lan.answers['name.test'] = found('127.0.0.1', ttl=60)
        await lan.get(request)
        lan.files.resolv_conf.unlink()
        await passing(59)
        await lan.get(request)


@pytest.mark.parametrize('line', ['nameserver', 'nameserver nonsense', 'nameserver 127.1',
                                  'nameserver fe80::1%no-such-link', 'nameserver [::1]:53'])
@on_clock
async def test_a_line_without_a_nameserver_is_skipped_with_a_warning(tmp_path, caplog, line):
    async with Lan(tmp_path) as lan, lan.pool() as request:
        lan.files.write_resolv_conf(f'# one\n{line}\nnameserver 127.0.0.1\n')
        for name in ('name.test', 'other.test'):
            lan.answers[name] = found('127.0.0.2')
            assert await lan.used(request, name) == '127.0.0.2'
        [warning] = warnings_of(caplog)
        value = line.partition(' ')[2]
        assert warning.endswith(f'{lan.files.resolv_conf}, line 2: expected the IP address of a '
                                f'nameserver, got {value!r}')


@pytest.mark.parametrize('content', [None, '', '# nameserver 127.0.0.1', 'nameserver\n',
                                     'search a.test\noptions ndots:2', 'nameserver nonsense'],
                         ids=['missing', 'empty', 'comment', 'no value', 'others', 'no address'])
@on_clock
async def test_no_nameserver_is_an_error_until_there_is_one(tmp_path, content):
    async with Lan(tmp_path, hosts='127.0.0.2 a.test') as lan:
        lan.answers['name.test'] = found('127.0.0.1')
        if content is None:
            lan.files.resolv_conf.unlink()
        else:
            lan.files.write_resolv_conf(content)
        async with lan.pool() as request:
            error = await times(0, lan.fails(request, None))
            assert f'no nameserver in {lan.files.resolv_conf}' in str(error)
            assert await lan.used(request, 'a.test') == '127.0.0.2'
            assert await lan.used(request, 'localhost') == '127.0.0.1'
            lan.files.write_resolv_conf(nameservers_of(lan.nameserver))
            assert await lan.used(request) == '127.0.0.1'


# --------------------------------------------------------------------------------- stale addresses


FAILURES = {
    'silence': SILENCE, 'SERVFAIL': SERVFAIL, 'REFUSED': REFUSED_REPLY,
    'a port that refuses': None,
}


@contextlib.contextmanager
def failing(nameserver, case):
    """The nameserver fails in a way, and then works again."""
    if FAILURES[case] is None:
        nameserver.refuse('127.0.0.1')
        yield
        nameserver.listen('127.0.0.1')
    else:
        nameserver.answers_at['127.0.0.1'] = FAILURES[case]
        yield
        del nameserver.answers_at['127.0.0.1']


@pytest.mark.parametrize('case', FAILURES)
@on_clock
async def test_old_addresses_serve_while_the_nameserver_fails(tmp_path, case, caplog):
    async with Lan(tmp_path) as lan, lan.pool() as request:
        lan.answers['name.test'] = found('127.0.0.1', ttl=5)
        assert await lan.used(request) == '127.0.0.1'
        await passing(5)
        caplog.clear()
        with failing(lan.nameserver, case):
            # The first to ask waits for a second at most.
            seconds, task = await measured(lan.used(request))
            assert await task == '127.0.0.1'
            assert seconds == (1 if case == 'silence' else 0)
            for _ in range(28):
                seconds, task = await measured(lan.used(request))
                assert await task == '127.0.0.1'
                assert seconds <= 0.25
                await passing(1 - seconds)
            assert lan.web.connections == ['127.0.0.1']
            assert len(stale_warnings_of(caplog)) == 1
            # 30 seconds after its end, the answer is over for good.
            await passing(3)
            await measured(lan.fails(request, None))
        await passing(2)
        lan.answers['name.test'] = found('127.0.0.2', ttl=5)
        assert await lan.used(request) == '127.0.0.2'


@on_clock
async def test_old_addresses_serve_for_new_connections_too(tmp_path):
    async with Lan(tmp_path) as lan, lan.pool(keep_alive_timeout=0) as request:
        lan.answers['name.test'] = found('127.0.0.1', ttl=5)
        await lan.get(request)
        await passing(6)
        with failing(lan.nameserver, 'SERVFAIL'):
            for _ in range(3):
                assert await times(0, lan.used(request)) == '127.0.0.1'
        assert lan.web.connections == ['127.0.0.1'] * 4


@on_clock
async def test_one_asks_while_the_others_use_the_old_addresses(tmp_path):
    async with Lan(tmp_path) as lan, lan.pool() as request:
        lan.answers['name.test'] = found('127.0.0.1', ttl=5)
        await lan.get(request)
        await passing(5)
        with failing(lan.nameserver, 'silence'):
            # At the end of the TTL the nameserver may just be about to answer.
            first = asyncio.ensure_future(lan.get(request))
            await passing(0.9)
            second = asyncio.ensure_future(lan.get(request))
            await passing(0.099)
            assert not first.done()
            assert not second.done()
            await passing(0.001)
            assert first.done()
            assert second.done()
            assert lan.nameserver.times(kind='A') == [0, 5, 5.5]
            # From then on it is known to be down.
            await passing(1)
            third = asyncio.ensure_future(lan.get(request))
            await passing(0.2)
            assert not third.done()
            for _ in range(5):
                await times(0, lan.get(request))
            await passing(0.05)
            assert third.done()
            assert len(lan.nameserver.times(kind='A')) == 4


@on_clock
async def test_a_slow_nameserver_is_not_taken_for_one_that_is_down(tmp_path):
    """A request that joined a lookup shortly before its end tells nothing of how long it takes."""
    async with Lan(tmp_path) as lan, lan.pool() as request:
        lan.answers['name.test', 'A'] = found('127.0.0.1', ttl=5, late=0.6)
        lan.answers['name.test', 'AAAA'] = Reply()
        first = asyncio.ensure_future(lan.get(request))
        await passing(1)
        second = asyncio.ensure_future(lan.get(request))
        await passing(1)
        await asyncio.gather(first, second)
        lan.answers['name.test', 'A'] = found('127.0.0.2', ttl=5, late=0.6)
        await passing(4)
        assert await times(1.1, lan.used(request)) == '127.0.0.2'


@on_clock
async def test_it_is_asked_again_after_pauses_that_grow_to_eight_seconds(tmp_path):
    async with Lan(tmp_path) as lan, lan.pool() as request:
        lan.answers['name.test'] = found('127.0.0.1', ttl=5)
        await lan.get(request)
        await passing(5)
        with failing(lan.nameserver, 'SERVFAIL'):
            await lan.get(request)
            for pause in (1, 2, 4, 8, 8):
                for seconds in (pause / 2, pause / 2 - 0.001, 0.001):
                    await passing(seconds)
                    await lan.get(request)
            assert sorted(set(lan.nameserver.times(kind='A'))) == [0, 5, 6, 8, 12, 20, 28]


@on_clock
async def test_requests_that_wait_together_are_one_failure(tmp_path):
    """The pause after it is the first, of a second, however many wait."""
    async with Lan(tmp_path) as lan, lan.pool() as request:
        lan.answers['name.test'] = found('127.0.0.1', ttl=5)
        await lan.get(request)
        await passing(5)
        with failing(lan.nameserver, 'silence'):
            tasks = []
            for _ in range(9):
                tasks.append(asyncio.ensure_future(lan.get(request)))
                await passing(0.1)
            await passing(0.5)
            assert [task.done() for task in tasks] == [True] * 9
        lan.answers['name.test'] = found('127.0.0.2', ttl=5)
        await passing(0.7)
        assert await lan.used(request) == '127.0.0.2'


@on_clock
async def test_another_nameserver_in_resolv_conf_ends_an_outage(tmp_path):
    """As when a VPN is made, or a laptop comes to another network."""
    async with Lan(tmp_path, nameservers=['127.0.0.1', '127.0.0.2']) as lan, lan.pool() as request:
        lan.files.write_resolv_conf('nameserver 127.0.0.1')
        lan.answers['name.test'] = found('127.0.0.1', ttl=5)
        await lan.get(request)
        await passing(5)
        with failing(lan.nameserver, 'silence'):
            await times(1, lan.get(request))
            lan.files.write_resolv_conf('nameserver 127.0.0.2')
            lan.answers['name.test'] = found('127.0.0.2', ttl=5)
            await passing(1)
            assert await times(0, lan.used(request)) == '127.0.0.2'


@on_clock
async def test_old_addresses_serve_when_the_domain_of_a_short_name_fails(tmp_path):
    """Though the name exists in no other domain."""
    async with Lan(tmp_path, options=TWO_DOMAINS) as lan, lan.pool() as request:
        lan.answers['api.a.test'] = found('127.0.0.1', ttl=5)
        await lan.used(request, 'api')
        await passing(5)
        lan.answers['api.a.test'] = SERVFAIL
        assert await times(0, lan.used(request, 'api')) == '127.0.0.1'


@on_clock
async def test_a_change_is_followed_as_soon_as_the_nameserver_works_again(tmp_path, caplog):
    async with Lan(tmp_path) as lan, lan.pool() as request:
        lan.answers['name.test'] = found('127.0.0.1', ttl=5)
        await lan.get(request)
        for number in (1, 2):
            await passing(5)
            caplog.clear()
            with failing(lan.nameserver, 'SERVFAIL'):
                assert await lan.used(request) == f'127.0.0.{number}'
                await passing(0.5)
                assert await lan.used(request) == f'127.0.0.{number}'
            lan.answers['name.test'] = found(f'127.0.0.{3 - number}', ttl=5)
            await passing(0.5)
            assert await lan.used(request) == f'127.0.0.{3 - number}'
            # Each outage is told once.
            assert len(stale_warnings_of(caplog)) == 1


# Of what ends them at once: the answer when the TTL has ended, and the cause of the error.
NOT_STALE = {
    'the name is gone': (NXDOMAIN, aiodnsresolver.DnsRecordDoesNotExist),
    'it has no address': (Reply(), aiodnsresolver.DnsNoMatchingAnswers),
}


@pytest.mark.parametrize('case', NOT_STALE)
@on_clock
async def test_old_addresses_do_not_serve_when_the_name_is_gone(tmp_path, case):
    reply, cause = NOT_STALE[case]
    async with Lan(tmp_path) as lan, lan.pool() as request:
        lan.answers['name.test'] = found('127.0.0.1', ttl=5)
        await lan.get(request)
        await passing(5)
        lan.answers['name.test'] = reply
        await times(0, lan.fails(request, cause))
        # Nor when the nameserver fails after that.
        await passing(1)
        with failing(lan.nameserver, 'SERVFAIL'):
            await times(0, lan.fails(request, aiodnsresolver.DnsResponseCode))


@pytest.mark.parametrize('max_stale, seconds', [(0, 0), (2, 2), (60, 60)])
@on_clock
async def test_max_stale_tells_for_how_long_old_addresses_serve(tmp_path, max_stale, seconds):
    async with Lan(tmp_path) as lan, lan.pool(max_stale=max_stale) as request:
        lan.answers['name.test'] = found('127.0.0.1', ttl=5)
        await lan.get(request)
        await passing(5)
        with failing(lan.nameserver, 'SERVFAIL'):
            if seconds:
                await passing(seconds - 0.001)
                assert await lan.used(request) == '127.0.0.1'
                await passing(0.001)
            await times(0, lan.fails(request, aiodnsresolver.DnsResponseCode))


# What a resolver of the caller's raises, and whether the old addresses serve then.
RAISED = {
    'OSError': (OSError('no route'), True), 'TimeoutError': (TimeoutError(), True),
    'DnsError': (aiodnsresolver.DnsError(), True),
    'DnsTimeout': (aiodnsresolver.DnsTimeout(), True),
    'DnsResponseCode': (aiodnsresolver.DnsResponseCode(2), True),
    'PermissionError': (PermissionError('not allowed'), False),
    'ValueError': (ValueError('a fault'), False),
    'DnsRecordDoesNotExist': (aiodnsresolver.DnsRecordDoesNotExist(), False),
}


@on_clock
async def test_what_a_resolver_raises_decides_whether_old_addresses_serve():
    async def resolve(host):
        if failures:
            raise failures[0]
        return [lasting('127.0.0.1', 5)]

    for case, (error, serves) in RAISED.items():
        with row(case):
            failures = []
            async with (ServerAtEach('127.0.0.1') as web,
                        pool(get_dns_resolver=resolving(resolve)) as request):
                url = f'http://name.test:{web.port}/'
                await get(request, url)
                await passing(5)
                failures.append(error)
                if serves:
                    await times(0, get(request, url))
                else:
                    await times(0, failed(get(request, url), HttpDnsError, type(error)))


@on_clock
async def test_a_fault_of_a_resolver_is_not_hidden_by_its_other_answer():
    async def resolve(host):
        raise ValueError('a fault')

    async def resolve_ipv6(host):
        asked.append(host)
        return [lasting('::1', 5)]

    asked = []
    async with pool(get_dns_resolver=resolving(resolve, resolve_ipv6)) as request:
        await failed(get(request, 'http://name.test/'), HttpDnsError, ValueError)
    assert asked == []


# -------------------------------------------------------------------------------- changing answers


FIFTY = [f'127.0.0.{number}' for number in range(1, 51)]


@pytest.mark.parametrize('ttl, options, connections', [
    (1, {}, 3), (60, {}, 3), (1, {'max_grace': 0}, 5), (4, {'max_grace': 2}, 5)])
@on_clock
async def test_an_address_that_has_just_left_the_answer_is_used_on(
        tmp_path, ttl, options, connections):
    """Eight of fifty addresses, others each time: 25 requests in five times the TTL."""
    async with Lan(tmp_path, *FIFTY) as lan:
        lan.answers['name.test'] = rotating(FIFTY, 8, ttl=ttl)
        async with lan.pool(keep_alive_timeout=600, **options) as request:
            for _ in range(25):
                await lan.get(request)
                await passing(ttl / 5)
        assert len(lan.nameserver.queries) == 5
        assert len(lan.web.connections) == connections


@on_clock
async def test_a_grace_lasts_for_one_more_ttl_and_for_max_grace_at_most(tmp_path):
    for ttl, options, seconds in ((5, {}, 5), (100, {}, 60), (100, {'max_grace': 7}, 7),
                                  (5, {'max_grace': 7}, 5)):
        with row(f'{ttl} {options}'):
            async with Lan(tmp_path, '127.0.0.1', '127.0.0.2', '127.0.0.3', '127.0.0.4') as lan:
                lan.answers['name.test'] = found('127.0.0.1', '127.0.0.2', ttl=ttl)
                async with lan.pool(keep_alive_timeout=600, **options) as request:
                    before = await lan.used(request)
                    await passing(ttl)
                    lan.answers['name.test'] = found('127.0.0.3', '127.0.0.4', ttl=1000)
                    assert await lan.used(request) == before
                    await passing(seconds - 0.001)
                    assert await lan.used(request) == before
                    assert lan.web.ended == []
                    await passing(0.001)
                    assert await lan.used(request) in ('127.0.0.3', '127.0.0.4')
                    await until(lambda: lan.web.ended == [before])  # noqa: B023


@on_clock
async def test_a_new_connection_never_leads_to_an_address_that_has_left(tmp_path):
    async with Lan(tmp_path, '127.0.0.1', '127.0.0.2', '127.0.0.3', '127.0.0.4') as lan:
        lan.answers['name.test'] = found('127.0.0.1', '127.0.0.2', ttl=5)
        async with lan.pool() as request:
            await lan.get(request)
            await passing(5)
            lan.answers['name.test'] = found('127.0.0.3', '127.0.0.4', ttl=5)
            await asyncio.gather(*(lan.get(request) for _ in range(9)))
        assert collections.Counter(lan.web.connections[1:]) == {'127.0.0.3': 4, '127.0.0.4': 4}


@on_clock
async def test_a_host_with_one_address_that_moves_is_followed_at_its_ttl(tmp_path):
    async with Lan(tmp_path) as lan, lan.pool(keep_alive_timeout=600) as request:
        lan.answers['name.test'] = found('127.0.0.1', ttl=30)
        assert await lan.used(request) == '127.0.0.1'
        lan.answers['name.test'] = found('127.0.0.2', ttl=30)
        await passing(29.999)
        assert await lan.used(request) == '127.0.0.1'
        await passing(0.001)
        assert await lan.used(request) == '127.0.0.2'


@on_clock
async def test_an_address_of_two_answers_ago_has_its_grace_too(tmp_path):
    """When the TTL is another one each time."""
    async with Lan(tmp_path, *FIFTY[:6]) as lan, lan.pool(keep_alive_timeout=600) as request:
        lan.answers['name.test'] = one_by_one(
            found(*FIFTY[:2], ttl=50), found(*FIFTY[2:4], ttl=5), found(*FIFTY[4:6], ttl=1000))
        before = await lan.used(request)
        for seconds in (50, 5, 44.999):
            await passing(seconds)
            assert await lan.used(request) == before
        await passing(0.001)
        assert await lan.used(request) in FIFTY[4:6]
        assert len(lan.nameserver.queries) == 3


@on_clock
async def test_an_address_that_is_told_twice_is_a_single_one(tmp_path):
    async with Lan(tmp_path) as lan, lan.pool() as request:
        lan.answers['name.test'] = found('127.0.0.1', '127.0.0.1', ttl=5)
        assert await lan.used(request) == '127.0.0.1'
        lan.answers['name.test'] = found('127.0.0.2', '127.0.0.2', ttl=5)
        await passing(5)
        assert await lan.used(request) == '127.0.0.2'


@on_clock
async def test_an_address_that_comes_back_is_a_current_one(tmp_path):
    async with Lan(tmp_path, '127.0.0.1', '127.0.0.2', '127.0.0.3', '127.0.0.4') as lan:
        answers = [found('127.0.0.1', '127.0.0.2', ttl=5), found('127.0.0.3', '127.0.0.4', ttl=5)]
        lan.answers['name.test'] = one_by_one(*answers * 6)
        async with lan.pool(keep_alive_timeout=600) as request:
            for _ in range(12):
                await lan.get(request)
                await passing(5)
        assert len(lan.web.connections) == 1


@on_one_loop
async def test_pools_do_not_all_begin_at_the_same_address(tmp_path, random_turn, monkeypatch):
    monkeypatch.setattr(lowhaio, 'random_turn', random_turn)
    addresses = FIFTY[:16]
    async with Lan(tmp_path, *addresses) as lan:
        lan.answers['name.test'] = found(*addresses)
        for _ in range(48):
            async with lan.pool() as request:
                await lan.get(request)
    # That all are the same happens once in 16 ** 47 runs, and that there are fewer than four
    # once in 10 ** 30.
    assert len(set(lan.web.connections)) >= 4


@on_one_loop
async def test_new_names_of_a_pool_do_not_all_begin_at_the_same_address(
        tmp_path, random_turn, monkeypatch):
    monkeypatch.setattr(lowhaio, 'random_turn', random_turn)
    addresses = FIFTY[:16]
    async with Lan(tmp_path, *addresses) as lan, lan.pool() as request:
        for number in range(48):
            lan.answers[f'{number}.test'] = found(*addresses)
            await lan.get(request, f'{number}.test')
    assert len(set(lan.web.connections)) >= 4


# ------------------------------------------------------------------------------ A and AAAA records


# The replies for A and AAAA, the address that is used, and after how many seconds.
KINDS = {
    'A SERVFAIL': (SERVFAIL, found('::1'), '::1', 0),
    'A REFUSED': (REFUSED_REPLY, found('::1'), '::1', 0),
    'A NODATA': (Reply(), found('::1'), '::1', 0),
    'A silent': (SILENCE, found('::1'), '::1', 1),
    'A silent, AAAA late': (SILENCE, found('::1', late=0.4), '::1', 1),
    'A silent, AAAA later': (SILENCE, found('::1', late=0.45, ttl=9), '::1', 1),
    'A late': (found('127.0.0.1', late=0.4), found('::1'), '127.0.0.1', 0.4),
    'A fine, AAAA silent': (found('127.0.0.1'), SILENCE, '127.0.0.1', 0),
    'A fine, AAAA SERVFAIL': (found('127.0.0.1'), SERVFAIL, '127.0.0.1', 0),
    'A late, AAAA silent': (found('127.0.0.1', late=0.45), SILENCE, '127.0.0.1', 0.45),
    'A SERVFAIL late, AAAA late': (
        Reply(rcode='SERVFAIL', late=0.1), found('::1', late=0.35), '::1', 0.55),
}


@pytest.mark.parametrize('case', KINDS)
@on_clock
async def test_records_of_one_kind_are_used_when_the_other_kind_fails(tmp_path, case):
    ipv4, ipv6, address, seconds = KINDS[case]
    async with Lan(tmp_path, '127.0.0.1', '::1') as lan, lan.pool() as request:
        lan.answers['name.test', 'A'] = ipv4
        lan.answers['name.test', 'AAAA'] = ipv6
        assert await times(seconds, lan.used(request)) == address


@pytest.mark.parametrize('reply', [SERVFAIL, SILENCE], ids=['SERVFAIL', 'silence'])
@on_clock
async def test_old_ipv4_addresses_serve_while_only_aaaa_records_are_answered(tmp_path, reply):
    """Many machines have no IPv6, and could reach nothing with AAAA records alone."""
    async with Lan(tmp_path, '127.0.0.1', refusing=['::1']) as lan:
        lan.answers['name.test'] = found('127.0.0.1', '::1', ttl=5)
        async with lan.pool() as request:
            assert await lan.used(request) == '127.0.0.1'
            await passing(5)
            lan.answers['name.test', 'A'] = reply
            for _ in range(25):
                seconds, task = await measured(lan.used(request))
                assert await task == '127.0.0.1'
                assert seconds <= 1
                await passing(1)
        # They could not be used, so they are not asked for.
        assert lan.nameserver.asked(kind='AAAA') == []


@on_clock
async def test_a_records_are_waited_for_when_no_ipv6_address_can_be_reached(tmp_path):
    async with Lan(tmp_path, '127.0.0.1', refusing=['::1']) as lan, lan.pool() as request:
        lan.answers['name.test', 'A'] = one_by_one(SILENCE, SILENCE, found('127.0.0.1'))
        lan.answers['name.test', 'AAAA'] = found('::1')
        seconds, task = await measured(lan.used(request))
        assert await task == '127.0.0.1'
        assert 1 <= seconds <= 2


@on_clock
async def test_aaaa_records_are_asked_for_beside_a_question_for_a_that_takes_long(tmp_path):
    async with Lan(tmp_path, '127.0.0.1', '::1') as lan, lan.pool() as request:
        lan.answers['name.test', 'A'] = SILENCE
        lan.answers['name.test', 'AAAA'] = found('::1', ttl=300)
        assert await times(1, lan.used(request)) == '::1'
        assert lan.nameserver.times(kind='A') == [0, 0.5]
        assert lan.nameserver.times(kind='AAAA') == [0.25]
        # They are used for five seconds at most before the A records are asked for again.
        await passing(3.9)
        await times(0, lan.used(request))
        assert lan.nameserver.times(kind='A') == [0, 0.5]
        lan.answers['name.test', 'A'] = found('127.0.0.1')
        await passing(1.2)
        # The connection that there is leads to one of the addresses still.
        assert await times(0, lan.used(request)) == '::1'
        assert len(lan.nameserver.times(kind='A')) == 3
        assert lan.web.connections == ['::1']


# What fails, and when it is an error.
BOTH_FAIL = {
    'A refuses connections, AAAA silent': (found('127.0.0.1'), SILENCE, 0.25),
    'A refuses connections late, AAAA silent': (found('127.0.0.1', late=0.2), SILENCE, 0.6),
    'A SERVFAIL, AAAA silent': (SERVFAIL, SILENCE, 0.25),
    'A SERVFAIL late, AAAA silent': (Reply(rcode='SERVFAIL', late=0.4), SILENCE, 2.4),
    'A SERVFAIL, AAAA SERVFAIL': (SERVFAIL, SERVFAIL, 0),
    'A NODATA, AAAA SERVFAIL': (Reply(), SERVFAIL, 0),
}


@pytest.mark.parametrize('case', BOTH_FAIL)
@on_clock
async def test_records_of_the_other_kind_are_not_waited_for_for_long(tmp_path, case):
    ipv4, ipv6, seconds = BOTH_FAIL[case]
    async with Lan(tmp_path, '::1', refusing=['127.0.0.1']) as lan, lan.pool() as request:
        lan.answers['name.test', 'A'] = ipv4
        lan.answers['name.test', 'AAAA'] = ipv6
        for _ in range(2):
            taken, task = await measured(lan.get(request))
            error = task.exception()
            assert isinstance(error, HttpConnectionError)
            assert taken <= seconds + 0.001
            await passing(5)


# ------------------------------------------------------------------------ names that do not exist


# The options, the reply, and for how many seconds it is remembered.
NEGATIVE = {
    'no such name': ({}, NXDOMAIN, 1),
    'no address': ({}, Reply(), 1),
    'min_ttl of 3': ({'min_ttl': 3}, NXDOMAIN, 3),
    'min_ttl of 60': ({'min_ttl': 60}, NXDOMAIN, 5),
    'min_ttl of 0': ({'min_ttl': 0}, NXDOMAIN, 0),
}


@pytest.mark.parametrize('case', NEGATIVE)
@on_clock
async def test_that_a_name_does_not_exist_is_remembered_for_a_short_time(tmp_path, case):
    options, reply, seconds = NEGATIVE[case]
    async with Lan(tmp_path) as lan, lan.pool(**options) as request:
        lan.answers['name.test'] = reply
        errors = [await lan.fails(request, None)]
        each = len(lan.nameserver.queries)
        assert each <= 2
        if seconds:
            errors.append(await times(0, lan.fails(request, None)))
            await passing(seconds - 0.001)
            errors.append(await times(0, lan.fails(request, None)))
            assert len(lan.nameserver.queries) == each
            await passing(0.001)
        errors.append(await lan.fails(request, None))
        assert len(lan.nameserver.queries) == 2 * each
        # Each has an error of its own, so that a traceback does not grow.
        assert len({id(error) for error in errors}) == len(errors)
        assert len({id(error.__cause__) for error in errors}) == len(errors)
        assert len({str(error) for error in errors}) == 1
        lan.answers['name.test'] = found('127.0.0.2')
        await passing(seconds)
        assert await lan.used(request) == '127.0.0.2'


@on_clock
async def test_a_failure_of_the_nameserver_is_not_remembered(tmp_path):
    async with Lan(tmp_path) as lan, lan.pool() as request:
        lan.answers['name.test'] = SERVFAIL
        await lan.fails(request, aiodnsresolver.DnsResponseCode)
        lan.answers['name.test'] = found('127.0.0.1')
        assert await lan.used(request) == '127.0.0.1'


# ------------------------------------------------------------------------------ many names at once


@pytest.mark.parametrize('options, limit, count', [({}, 100, 200), ({'max_lookups': 7}, 7, 35)])
@on_clock
async def test_only_so_many_names_are_asked_for_at_once(tmp_path, options, limit, count):
    def get_sock(family):
        raise OSError('no socket is needed')

    names = [f'{number}.test' for number in range(count)]
    async with Lan(tmp_path) as lan, lan.pool(get_sock=get_sock, **options) as request:
        for name in names:
            lan.answers[name] = found('127.0.0.1', late=0.01)
        seconds, task = await measured(asyncio.gather(
            *(lan.get(request, name) for name in names), return_exceptions=True))
        assert {type(error) for error in task.result()} == {HttpConnectionError}
        assert lan.nameserver.most_pending == limit
        # First come, first served: the AAAA records are asked for after all A records.
        asked = lan.nameserver.asked()
        assert len(asked) == 2 * count
        waves = [asked[start:start + limit] for start in range(0, count, limit)]
        assert [sorted(wave) for wave in waves] == [
            sorted((name, 'A') for name in names[start:start + limit])
            for start in range(0, count, limit)]
        assert seconds <= 0.01 * -(-2 * count // limit) + 0.25


@on_clock
async def test_a_waiter_for_a_lookup_that_is_cancelled_passes_on_its_turn(tmp_path):
    async with Lan(tmp_path) as lan, lan.pool(max_lookups=1) as request:
        names = [f'{number}.test' for number in range(5)]
        for name in names:
            lan.answers[name] = found('127.0.0.1', late=0.1)
        tasks = [asyncio.ensure_future(lan.get(request, name)) for name in names]
        await settling()
        # One that waits, and one that has just got its turn but does not know it yet.
        tasks[1].cancel()
        lan.nameserver.loop.call_later(0.1, lambda: lan.nameserver.loop.call_soon(tasks[2].cancel))
        await passing(1)
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(end) for end in ended] == [
            tuple, asyncio.CancelledError, asyncio.CancelledError, tuple, tuple]
        assert await lan.used(request, '4.test') == '127.0.0.1'


@on_clock
async def test_requests_to_one_name_need_one_lookup(tmp_path):
    async with Lan(tmp_path) as lan, lan.pool(
            max_lookups=1, max_connections=5, keep_alive_timeout=0) as request:
        lan.answers['name.test'] = found('127.0.0.1', late=0.2)
        tasks = []
        for _ in range(20):
            tasks.append(asyncio.ensure_future(lan.get(request)))
            await passing(0.009)
        await passing(0.1)
        await asyncio.gather(*tasks)
        assert lan.nameserver.asked() == [('name.test', 'A')]
        # No timer of those that waited is left.
        assert asyncio.get_running_loop().next_due() is None


async def ends_in_turn(number, way, coroutine):
    """Cancel a request in this turn of the loop, or close it in this one of those in which it
    waits. Returns whether it was over before."""
    if way == 'cancel':
        task = asyncio.ensure_future(coroutine)
        await turns(number)
        is_over = task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return is_over

    async def then_forever():
        with contextlib.suppress(HttpDnsError):
            await coroutine
        over.append(True)
        await forever()

    over = []
    waits = itertools.count()
    both = then_forever()
    await run_until(both, lambda: over or next(waits) >= number)
    both.close()
    return over


# Lookups of many turns of the loop: what the nameserver says of name.test, and of other names.
LOOKUPS = {
    'by UDP': {'name.test': found('127.0.0.1')},
    'by TCP': {'name.test': found(*['127.0.0.1', *(f'127.0.1.{last}' for last in range(40))])},
    'search': {'name.test.b.test': found('127.0.0.1')},
    'AAAA': {'name.test': found('::1')},
    'aliases': {'name.test': Reply(aliases=('b.test',)), 'b.test': found('127.0.0.1')},
    'failure': {'name.test': SERVFAIL},
}


@pytest.mark.parametrize('way', ['cancel', 'close'])
@pytest.mark.parametrize('case', LOOKUPS)
@on_clock
async def test_a_request_that_ends_in_any_turn_of_its_lookup_leaves_nothing(tmp_path, case, way):
    async with Lan(tmp_path, '127.0.0.1', '::1', options=TWO_DOMAINS) as lan:
        lan.answers.update(LOOKUPS[case])
        lan.answers['other.test'] = found('127.0.0.1')
        before = len(open_descriptors())
        is_over = False
        numbers = itertools.count()
        while not is_over:
            async with lan.pool() as request:
                is_over = await ends_in_turn(next(numbers), way, lan.get(request))
                assert cancelling() == 0
                assert (await lan.get(request, 'other.test'))[2] == b'ok'
            # The nameserver keeps its connections.
            await until(lambda: len(open_descriptors())
                        == before + len(lan.nameserver.connections))
        assert next(numbers) >= 4


@on_clock
async def test_a_pool_may_be_closed_while_a_name_is_looked_up(tmp_path):
    async with Lan(tmp_path) as lan:
        lan.answers['name.test'] = found('127.0.0.1', late=0.2)
        request, close = Pool(get_dns_resolver=lan.files.get_dns_resolver)
        task = asyncio.ensure_future(lan.get(request))
        await passing(0.1)
        await close()
        await passing(0.2)
        # As any request that has begun before, it comes to its end.
        assert (await task)[2] == b'ok'
        await until(lambda: lan.web.ended == ['127.0.0.1'])


@on_clock
async def test_requests_that_wait_for_a_lookup_share_its_failure(tmp_path):
    async with Lan(tmp_path) as lan, lan.pool() as request:
        lan.answers['name.test'] = Reply(rcode='SERVFAIL', late=0.05)
        tasks = []
        for _ in range(20):
            tasks.append(asyncio.ensure_future(lan.fails(request, BAD_CODE)))
            await passing(0.004)
        await passing(0.2)
        await asyncio.gather(*tasks)
        assert len(lan.nameserver.asked()) <= 4


@on_clock
async def test_a_request_has_all_of_socket_timeout_for_its_lookup(tmp_path):
    """Though another one that began the lookup earlier fails earlier."""
    async with Lan(tmp_path) as lan, lan.pool(socket_timeout=2) as request:
        lan.answers['name.test'] = SILENCE
        first = asyncio.ensure_future(lan.fails(request, TimeoutError))
        await passing(1.5)
        second = asyncio.ensure_future(lan.used(request))
        await passing(0.6)
        await first
        lan.answers['name.test'] = found('127.0.0.1')
        await passing(1)
        assert await second == '127.0.0.1'


@on_clock
async def test_a_request_that_waits_for_the_lookup_of_a_later_one_ends_at_its_own_socket_timeout(
        tmp_path):
    """When the first ends, the third asks, and the second waits for that."""
    async with Lan(tmp_path) as lan, lan.pool(socket_timeout=2) as request:
        lan.answers['name.test'] = SILENCE
        tasks = []
        for words in (None, 'TimeoutError: socket_timeout, 2 seconds, passed', None):
            tasks.append(asyncio.ensure_future(lan.fails(request, TimeoutError, words)))
            await passing(0.5)
        for task in tasks:
            await passing(0.499)
            assert not task.done()
            await passing(0.001)
            assert task.done()
            await task


# Which of three requests to one name are cancelled, and when.
CANCELLED = {
    'the first, while A is asked for': ([0], 0.1),
    'the first, while both are': ([0], 0.3),
    'the first, in the second try': ([0], 0.6),
    'the second': ([1], 0.3),
    'the first two': ([0, 1], 0.3),
    'the last two': ([1, 2], 0.3),
    'all': ([0, 1, 2], 0.3),
}


@pytest.mark.parametrize('way', ['cancelled', 'closed'])
@pytest.mark.parametrize('case', CANCELLED)
@on_clock
async def test_a_lookup_goes_on_for_those_who_are_not_cancelled(tmp_path, case, way):
    indexes, seconds = CANCELLED[case]
    async with Lan(tmp_path, '127.0.0.1', '::1') as lan, lan.pool(max_lookups=2) as request:
        lan.answers['name.test', 'A'] = one_by_one(
            SILENCE, SILENCE, found('127.0.0.1', late=0.1))
        lan.answers['name.test', 'AAAA'] = SILENCE
        requests = [lan.get(request) for _ in range(3)]
        if way == 'closed':
            # By hand, as what drops a coroutine does.
            for index in indexes:
                requests[index].send(None)
        tasks = {index: asyncio.ensure_future(requests[index]) for index in range(3)
                 if way == 'cancelled' or index not in indexes}
        await passing(seconds)
        for index in indexes:
            if way == 'cancelled':
                tasks[index].cancel()
            else:
                requests[index].close()
        await passing(8)
        ends = await asyncio.gather(*tasks.values(), return_exceptions=True)
        assert [type(end) for end in ends] == [
            asyncio.CancelledError if index in indexes else tuple for index in tasks]
        # Nobody is waited for any more.
        lan.answers['name.test'] = lan.answers['other.test'] = found('127.0.0.1', ttl=1)
        assert await times(0, lan.used(request, 'other.test')) == '127.0.0.1'


@pytest.mark.parametrize('way', ['cancelled', 'closed'])
@on_clock
async def test_in_an_outage_the_request_that_came_last_asks_next(tmp_path, way):
    """Otherwise each would ask for the moment that it has left, when the one before it ends."""
    async with Lan(tmp_path) as lan, lan.pool() as request:
        lan.answers['name.test'] = SILENCE
        requests, tasks = [], []
        for _ in range(20):
            requests.append(lan.get(request))
            if way == 'closed':
                # By hand, as what drops a coroutine does.
                requests[-1].send(None)
            else:
                tasks.append(asyncio.ensure_future(requests[-1]))
            await passing(0.1)
        asked = len(lan.nameserver.asked(kind='A'))
        for coroutine in requests[:-1]:
            if way == 'closed':
                coroutine.close()
            else:
                tasks.pop(0).cancel()
            await passing(0.1)
        # The tries of one lookup in the two seconds since the first was ended.
        assert len(lan.nameserver.asked(kind='A')) - asked <= 3
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        requests[-1].close()


@on_clock
async def test_waiting_for_a_lookup_is_bounded_by_socket_timeout(tmp_path):
    async with Lan(tmp_path) as lan, lan.pool(max_lookups=1, socket_timeout=2) as request:
        lan.answers['name.test'] = SILENCE
        first = asyncio.ensure_future(lan.fails(request, TimeoutError))
        await settling()
        second = asyncio.ensure_future(lan.fails(request, TimeoutError, host='other.test'))
        await passing(2)
        await asyncio.gather(first, second)
        lan.answers['other.test'] = found('127.0.0.1')
        assert await times(0, lan.used(request, 'other.test')) == '127.0.0.1'


@on_clock
async def test_the_memory_of_the_resolver_is_bounded():
    def get_sock(family):
        raise OSError('no socket is needed')

    own = OwnResolver(lambda number, host: [lasting('127.0.0.1', 86400)])
    async with pool(get_dns_resolver=own, get_sock=get_sock) as request:
        for number in range(1100):
            with pytest.raises(HttpConnectionError):
                await request(b'GET', f'http://{number}.test/')
        assert len(own.cleared) >= 2
        last = [0, *own.cleared, len(own.asked)]
        assert max(after - before for before, after in itertools.pairwise(last)) <= 1025


# ------------------------------------------------------------------------------------------ errors


MISSING, NO_ADDRESS = aiodnsresolver.DnsRecordDoesNotExist, aiodnsresolver.DnsNoMatchingAnswers
BAD_CODE = aiodnsresolver.DnsResponseCode
FROM_IT = 'from nameserver 127.0.0.1 (DnsResponseCode)'
NO_SUCH = 'there is no such name'

# The replies for A and AAAA, further lines of resolv.conf, the cause and the text of the error.
ERRORS = {
    'no such name': (NXDOMAIN, NXDOMAIN, '', MISSING, f'{NO_SUCH} (DnsRecordDoesNotExist)'),
    'no such name in any domain': (
        NXDOMAIN, NXDOMAIN, TWO_DOMAINS, MISSING,
        f'{NO_SUCH}: name.test, name.test.a.test, name.test.b.test were asked for '
        '(DnsRecordDoesNotExist)'),
    'no address': (
        Reply(), Reply(), '', NO_ADDRESS, 'the name has no address (DnsNoMatchingAnswers)'),
    'SERVFAIL': (SERVFAIL, SERVFAIL, '', BAD_CODE, f'server failure (SERVFAIL) {FROM_IT}'),
    'SERVFAIL for A, no AAAA': (
        SERVFAIL, Reply(), '', BAD_CODE, f'server failure (SERVFAIL) {FROM_IT}'),
    'SERVFAIL for AAAA, no A': (
        Reply(), SERVFAIL, '', BAD_CODE, f'server failure (SERVFAIL) {FROM_IT}'),
    'REFUSED': (REFUSED_REPLY, REFUSED_REPLY, '', BAD_CODE, f'refused (REFUSED) {FROM_IT}'),
    'FORMERR': (
        Reply(rcode='FORMERR'), Reply(rcode='FORMERR'), '', BAD_CODE,
        f'format error (FORMERR) {FROM_IT}'),
    'NOTIMP': (
        Reply(rcode='NOTIMP'), Reply(rcode='NOTIMP'), '', BAD_CODE,
        f'not implemented (NOTIMP) {FROM_IT}'),
    'another code': (
        Reply(rcode='NOTAUTH'), Reply(rcode='NOTAUTH'), '', BAD_CODE,
        f'response code 9 {FROM_IT}'),
    'aliases that go round': (
        Reply(aliases=('name.test',)), Reply(), '', aiodnsresolver.DnsCnameChainTooLong,
        'its chain of aliases is too long, or a loop (DnsCnameChainTooLong)'),
    'silence': (
        SILENCE, SILENCE, '', TimeoutError, 'TimeoutError: no answer from nameserver 127.0.0.1 '
        'in 0.5 s, 127.0.0.1 in 1 s, 127.0.0.1 in 2 s, 127.0.0.1 in 4 s'),
    'silence, with options': (
        SILENCE, SILENCE, 'options timeout:3 attempts:2', TimeoutError,
        'TimeoutError: no answer from nameserver 127.0.0.1 in 3 s, 127.0.0.1 in 3 s'),
    'silence, until socket_timeout': (
        SILENCE, SILENCE, 'options timeout:6', TimeoutError,
        'TimeoutError: socket_timeout, 10 seconds, passed: no answer from nameserver 127.0.0.1 '
        'in 6 s, 127.0.0.1 in 6 s'),
}


@pytest.mark.parametrize('case', ERRORS)
@on_clock
async def test_errors_tell_in_words_why_a_name_has_no_address(tmp_path, case):
    ipv4, ipv6, options, cause, text = ERRORS[case]
    async with Lan(tmp_path, options=options) as lan, lan.pool() as request:
        lan.answers['name.test', 'A'] = ipv4
        lan.answers['name.test', 'AAAA'] = ipv6
        _, task = await measured(lan.fails(request, cause, text))
        error = await task
        assert (error.reused, error.response_started) == (False, False)


@on_clock
async def test_an_error_tells_which_nameserver_could_not_be_asked(tmp_path):
    async with Lan(tmp_path) as lan, lan.pool() as request:
        lan.nameserver.refuse('127.0.0.1')
        error = await times(0, lan.fails(
            request, aiodnsresolver.DnsSocketError, f'no answer from nameserver 127.0.0.1: '
            f'{REFUSED}, 127.0.0.1: {REFUSED} (DnsSocketError)'))
        assert type(error.__cause__.__cause__) is ConnectionRefusedError


@on_clock
async def test_an_error_tells_which_file_has_no_nameserver(tmp_path):
    async with Lan(tmp_path) as lan, lan.pool() as request:
        lan.files.write_resolv_conf('search a.test')
        await times(0, lan.fails(
            request, aiodnsresolver.DnsError,
            f'there is no nameserver in {lan.files.resolv_conf} (DnsError)'))


@pytest.mark.parametrize('addresses', [
    ('127.0.0.1', '127.0.0.2'), ('127.0.0.1', '::1'), ('::1', '127.0.0.1')])
@on_clock
async def test_of_several_nameservers_an_error_tells_of_the_last(tmp_path, addresses):
    """By its address as it is in the file."""
    async with Lan(tmp_path, nameservers=addresses) as lan, lan.pool() as request:
        lan.answers['name.test'] = SERVFAIL
        await times(0, lan.fails(
            request, BAD_CODE, f'server failure (SERVFAIL) from nameserver {addresses[1]} '
            '(DnsResponseCode)'))


# ------------------------------------------------------------------------ what failed is forgotten


class Content:
    """A body of a request, of which it can be told whether it is still there."""

    async def __call__(self):
        return
        yield


# What the nameserver says of both kinds, the options of resolv.conf, and those of the pool.
FORGOTTEN = {
    'no such name': (NXDOMAIN, '', {}),
    'no address': (Reply(), '', {}),
    'SERVFAIL': (SERVFAIL, '', {}),
    'SERVFAIL in each domain': (SERVFAIL, TWO_DOMAINS, {}),
    'aliases that go round': (Reply(aliases=('other.test', 'name.test')), '', {}),
    'silence': (SILENCE, '', {}),
    'silence until socket_timeout': (SILENCE, '', {'socket_timeout': 2}),
    'no connection after a failed try': (one_by_one(SERVFAIL, found('127.0.0.9')), '', {}),
    'a resolver of aiodnsresolver itself': (SERVFAIL, '', {'get_dns_resolver': asking}),
}


@pytest.mark.parametrize('is_cancelled', [False, True], ids=['', 'the first is cancelled'])
@pytest.mark.parametrize('count', [1, 2])
@pytest.mark.parametrize('case', FORGOTTEN)
@on_clock
async def test_a_failed_lookup_leaves_nothing_of_the_request_to_be_collected(
        tmp_path, case, count, is_cancelled, only_full_collections):
    reply, options, pool_options = FORGOTTEN[case]
    async with Lan(tmp_path, options=options) as lan:
        lan.answers.update(dict.fromkeys(
            ('name.test', 'name.test.a.test', 'name.test.b.test'), reply))
        if pool_options.get('get_dns_resolver') is asking:
            # In a single try: the error of an earlier one, which only it knows, is in a cycle.
            pool_options = {'get_dns_resolver': asking((5, ('127.0.0.1', lan.nameserver.port)))}
        async with lan.pool(**pool_options) as request:
            contents = [Content() for _ in range(count)]
            kept = [weakref.ref(content) for content in contents]
            tasks = [asyncio.ensure_future(request(b'GET', 'http://name.test:1/', body=content))
                     for content in contents]
            del contents
            await passing(0.3)
            if is_cancelled:
                tasks[0].cancel()
            await passing(10)
            assert all(isinstance(error, HttpConnectionError | asyncio.CancelledError)
                       for error in await asyncio.gather(*tasks, return_exceptions=True))
            tasks.clear()
            await settling()
            assert [reference() for reference in kept] == [None] * count


# ----------------------------------------------------------------------------------------- options


SECONDS = ('min_ttl', 'max_stale', 'max_grace')


@pytest.mark.parametrize('option', SECONDS)
@pytest.mark.parametrize('value', [-1, None, '1', float('nan'), float('inf')])
def test_the_seconds_of_names_are_checked_when_the_pool_is_made(option, value):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 the whole message is compared
        Pool(**{option: value})
    assert str(caught.value) == f'{option} must be a number of seconds, got {value!r}'


@pytest.mark.parametrize('value', [0, -1, None, 1.5, '1'])
def test_max_lookups_is_checked_when_the_pool_is_made(value):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 the whole message is compared
        Pool(max_lookups=value)
    assert str(caught.value) == f'max_lookups must be a number, 1 or more, got {value!r}'


def test_the_least_values_of_the_options_of_names():
    Pool(min_ttl=0, max_stale=0, max_grace=0, max_lookups=1)
