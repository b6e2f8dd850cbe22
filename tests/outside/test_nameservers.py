"""Names, with the nameservers that people run

tests/test_names.py scripts its nameserver, so it knows only what its authors thought of. Here the
answers are those of BIND, dnsdist, dnsmasq, Knot DNS, Knot Resolver, NSD, PowerDNS, its Recursor
and Unbound, all with the zone of nameservers.py. In front of each there is a relay that counts
what is asked, and that can be slow, lose a query or fail.

Whatever is asked for leads to a server on this machine, at any of its loopback addresses. Which
address was connected to is told by that server.
"""

import asyncio
import contextlib
import functools
import logging
import pathlib
import socket
import sys
import time

import aiodnsresolver
import pytest

import lowhaio
from lowhaio import HttpDnsError
from tests.harness import (
    OK,
    Answering,
    ServerAt,
    bound_to,
    bound_to_each,
    failed,
    get,
    local_address,
    on_loops,
    on_loops_at_once,
    pool,
    row,
    until,
    value,
    with_length,
)

sys.path.append(str(pathlib.Path(__file__).parent))

from nameservers import PROGRAMS, ZONE, loopback, relay_to, running  # noqa: E402


@pytest.fixture(scope='module', params=PROGRAMS)
def nameserver(request):
    """Each of those that are installed."""
    if missing := PROGRAMS[request.param].missing():
        pytest.skip(f'not installed, of Debian: {" and ".join(missing)}')
    with running(request.param) as nameserver:
        yield nameserver


@pytest.fixture
def relay(nameserver):
    with relay_to(nameserver) as relay:
        yield relay


@pytest.fixture(scope='module')
def nameservers():
    """One of each that is installed, for tests that have to wait: they wait for all at once."""
    installed = [name for name in PROGRAMS if not PROGRAMS[name].missing()]
    if not installed:
        pytest.skip('no nameserver is installed')
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(running(name)) for name in installed]


async def for_each(nameservers, directory, function):
    """Call an async function of a relay and of files for each nameserver, all at once."""
    directory = fresh(directory)

    async def call(nameserver, relay):
        with row(nameserver.name):
            files = Files(directory / nameserver.name, relay.port)
            async with everywhere(Noting()) as server:
                await function(relay, files, server)

    with contextlib.ExitStack() as stack:
        async with asyncio.TaskGroup() as group:
            for nameserver in nameservers:
                relay = stack.enter_context(relay_to(nameserver))
                group.create_task(call(nameserver, relay))


def fresh(directory):
    """A directory for one of the loops, which run at the same time."""
    for number in range(10):
        with contextlib.suppress(FileExistsError):
            path = directory / str(number)
            path.mkdir()
            return path
    raise AssertionError


class Files:
    """The two files of a machine, and the options of a pool that reads them."""

    def __init__(self, directory, port):
        directory.mkdir(exist_ok=True)
        self.hosts = directory / 'hosts'
        self.resolv_conf = directory / 'resolv.conf'
        self.hosts.write_text('')
        self.resolv_conf.write_text('nameserver 127.0.0.1\n')
        self.options = {'get_dns_resolver': functools.partial(
            lowhaio.get_dns_resolver_default,
            hosts=str(self.hosts), resolv_conf=str(self.resolv_conf), port=port)}


@pytest.fixture
def files(relay, tmp_path):
    return Files(tmp_path, relay.port)


class Noting(Answering):
    """It notes the address at which each of its connections was made."""

    def __init__(self, response=OK):
        super().__init__(response)
        self.addresses = []

    async def __call__(self, peer):
        self.addresses.append(local_address(peer))
        await super().__call__(peer)


def everywhere(script):
    """A server at each address of IPv4 that this machine has."""
    return ServerAt(*bound_to('0.0.0.0'), script)


# Each request makes a connection.
CLOSING = with_length(b'connection: close')


def url(name, server):
    return f'http://{name}.{ZONE}:{server.port}/'


# ------------------------------------------------------------------------------------ many records


@on_loops
async def test_each_of_five_addresses_gets_a_connection(relay, files):
    script = Noting(CLOSING)
    async with everywhere(script) as server, pool(**files.options) as request:
        for _ in range(5):
            assert (await get(request, url('five', server)))[2] == b'ok'
    assert sorted(script.addresses) == list(map(loopback, range(1, 6)))
    assert relay.names() == ['five']


@on_loops
async def test_pools_begin_at_different_addresses(relay, files, monkeypatch, random_turn):
    monkeypatch.setattr(lowhaio, 'random_turn', random_turn)
    first = set()
    script = Noting(CLOSING)
    async with everywhere(script) as server:
        # One in five to the power of thirty times, all of them begin at the same one.
        for _ in range(31):
            async with pool(**files.options) as request:
                await get(request, url('five', server))
            first.add(script.addresses.pop())
    assert len(first) > 1


@pytest.mark.parametrize('name,number', [('thirty', 30), ('sixty', 60), ('hundred', 100)])
@on_loops
async def test_a_truncated_answer_is_asked_for_by_tcp(relay, files, name, number):
    """Most send none of so many addresses in 512 bytes."""
    script = Noting(CLOSING)
    async with everywhere(script) as server, pool(**files.options) as request:
        for _ in range(number):
            await get(request, url(name, server))
    await until(lambda: not relay.has_connection)
    assert len(set(script.addresses)) == number
    assert [transport for _, kind, transport in relay.asked if kind == 'A'] == ['UDP', 'TCP']


# Knot ends an answer after the fifth alias, and is asked for what follows.
AT_ONCE = {'knot': 5}


@pytest.mark.parametrize('length', [3, 10])
@on_loops
async def test_a_chain_of_aliases_in_one_answer_is_one_query(
        relay, files, nameserver, length):
    script = Noting()
    async with everywhere(script) as server, pool(**files.options) as request:
        assert (await get(request, url(f'chain{length}', server)))[2] == b'ok'
    assert script.addresses == ['127.0.0.1']
    assert len(relay.names()) <= max(1, 1 + length - AT_ONCE.get(nameserver.name, length))


# -------------------------------------------------------------------------------------- one family


@on_loops
async def test_a_name_with_only_an_ipv6_address(relay, files):
    first, second = bound_to_each('0.0.0.0', '::1')
    script = Noting()
    async with (ServerAt(first, script) as server, ServerAt(second, script),
                pool(**files.options) as request):
        for _ in range(3):
            assert (await get(request, url('six', server)))[2] == b'ok'
    assert script.addresses == ['::1']
    assert relay.asked == [(f'six.{ZONE}', 'A', 'UDP'), (f'six.{ZONE}', 'AAAA', 'UDP')]


@pytest.mark.parametrize('fault', ['failing_for', 'silent_for'])
@on_loops_at_once
async def test_the_ipv6_address_is_used_if_the_other_kind_can_not_be_had(
        nameservers, tmp_path, fault):
    async def run(relay, files, _):
        setattr(relay, fault, ('A',))
        async with (ServerAt(*bound_to_each('::1'), Noting()) as server,
                    pool(**files.options) as request):
            assert (await get(request, url('six', server)))[2] == b'ok'

    await for_each(nameservers, tmp_path, run)


# ----------------------------------------------------------------------------------- no such names


NO_ADDRESS = {
    'missing': (aiodnsresolver.DnsRecordDoesNotExist, 'there is no such name'),
    'text': (aiodnsresolver.DnsNoMatchingAnswers, 'the name has no address'),
}


@pytest.mark.parametrize('name', NO_ADDRESS)
@on_loops
async def test_a_name_without_an_address(relay, files, name):
    """It is remembered for min_ttl, but for no more than five seconds."""
    cause, words = NO_ADDRESS[name]
    full = f'{name}.{ZONE}'
    async with pool(min_ttl=5, **files.options) as request:
        started = time.monotonic()
        for _ in range(10):
            await failed(
                request(b'GET', f'http://{full}/'), HttpDnsError, cause,
                f'GET http://{full}:80: resolving {full} failed: {words} ({cause.__name__})')
    times = 1 + (time.monotonic() - started) // 5  # more than once on a very slow machine
    assert len(relay.asked) <= 2 * times
    assert {kind for _, kind, _ in relay.asked} == {'A', 'AAAA'}


# -------------------------------------------------------------------------------------------- time


@on_loops
async def test_a_ttl_of_zero_is_taken_for_a_second(relay, files):
    async with everywhere(Noting()) as server, pool(**files.options) as request:
        started = time.monotonic()
        for _ in range(100):
            await get(request, url('zero', server))
    assert 1 <= len(relay.names()) <= 1 + (time.monotonic() - started)


@on_loops
async def test_a_ttl_of_zero_can_be_kept_to(relay, files, nameserver):
    async with everywhere(Noting()) as server, pool(min_ttl=0, **files.options) as request:
        for _ in range(10):
            await get(request, url('zero', server))
    if nameserver.program.raises_ttl_0:
        assert 1 <= len(relay.names()) <= 10
    else:
        assert len(relay.names()) == 10


@on_loops_at_once
async def test_answers_in_another_order_keep_their_connections(nameservers, tmp_path):
    """Some turn the records at each answer, and some shuffle them."""
    async def run(relay, files, server):
        async with pool(**files.options) as request:
            while relay.count('turning', 'A') < 3:
                await get(request, url('turning', server))
                await asyncio.sleep(0.01)
        assert len(server.script.addresses) == 1

    await for_each(nameservers, tmp_path, run)


@on_loops_at_once
async def test_a_nameserver_that_dies_and_comes_back_with_another_address(
        nameservers, tmp_path):
    """The connection serves on while nobody can tell, and then the new address is followed."""
    async def run(relay, files, server):
        with running(relay.name) as nameserver:
            # Without the relay: the port itself is gone.
            files = Files(files.hosts.parent / 'own', nameserver.port)
            seen = Warnings()
            async with pool(**seen.options, **files.options) as request:
                await get(request, url('moved', server))
                nameserver.stop()
                while not seen.messages:
                    await get(request, url('moved', server))
                    await asyncio.sleep(0.01)
                for _ in range(10):
                    await get(request, url('moved', server))
                assert server.script.addresses == ['127.0.0.1']
                nameserver.start(moved_to='127.0.0.2')
                while len(server.script.addresses) == 1:
                    await get(request, url('moved', server))
                    await asyncio.sleep(0.01)
        assert server.script.addresses == ['127.0.0.1', '127.0.0.2']
        assert len(seen.messages) == 1
        assert seen.messages[0].startswith(f'Resolving moved.{ZONE} failed: ')
        assert seen.messages[0].endswith('. Its last addresses are used for up to 30 seconds')

    await for_each(nameservers, tmp_path, run)


class Warnings:
    """What the pool warns of. The loggers of the resolver tell each try that fails, too."""

    def __init__(self):
        self.messages = []
        self.logger = logging.Logger('names')
        handler = logging.Handler(logging.WARNING)
        handler.emit = self.emit
        self.logger.addHandler(handler)
        self.options = {'get_logger_adapter': self.adapter,
                        'get_resolver_logger_adapter': lambda extra: self.adapter}

    def adapter(self, extra):
        return logging.LoggerAdapter(self.logger, extra)

    def emit(self, record):
        if not record.getMessage().startswith('Nameserver failed'):
            self.messages.append(record.getMessage())


# ----------------------------------------------------------------------------- queries and answers


@on_loops_at_once
async def test_a_slow_nameserver_is_waited_for(nameservers, tmp_path):
    async def run(relay, files, server):
        relay.delay = 0.6
        async with pool(**files.options) as request:
            assert (await get(request, url('www', server)))[2] == b'ok'
        # One after half a second, and one after another, beside what is asked about IPv6.
        assert relay.count('www', 'A') <= 3

    await for_each(nameservers, tmp_path, run)


@on_loops_at_once
async def test_a_lost_query_is_sent_again(nameservers, tmp_path):
    async def run(relay, files, server):
        relay.lost = 1
        async with pool(**files.options) as request:
            assert (await get(request, url('www', server)))[2] == b'ok'
        assert relay.count('www', 'A') == 2

    await for_each(nameservers, tmp_path, run)


@on_loops_at_once
async def test_who_has_answered_is_asked_first(nameservers, tmp_path):
    """One that is silent costs a time-out once, and not for each name."""
    async def run(relay, files, server):
        files.resolv_conf.write_text('nameserver 127.0.0.2\nnameserver 127.0.0.1\n')
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(('127.0.0.2', relay.port))
            async with pool(**files.options) as request:
                for number in range(10):
                    await get(request, url(f'{number}.many', server))
            silent.setblocking(False)
            asked = []
            with contextlib.suppress(BlockingIOError):
                while True:
                    asked.append(silent.recv(512))
        # A query for A, and one for AAAA after a quarter of a second without an answer.
        assert 1 <= len(asked) <= 2
        assert all(relay.count(f'{number}.many', 'A') for number in range(10))

    await for_each(nameservers, tmp_path, run)


@on_loops
async def test_a_nameserver_that_refuses_is_not_waited_for(relay, files):
    """Its port is closed."""
    files.resolv_conf.write_text('nameserver 127.0.0.2\nnameserver 127.0.0.1\n')
    seconds = []
    async with everywhere(Noting()) as server:
        for _ in range(3):
            started = time.monotonic()
            async with pool(**files.options) as request:
                await get(request, url('www', server))
            seconds.append(time.monotonic() - started)
    assert min(seconds) < 0.5  # which is the first time-out
    assert relay.names() == ['www'] * 3


@on_loops
async def test_a_server_failure_is_told_in_words(relay, files):
    relay.failing_for = 'A', 'AAAA'
    async with pool(**files.options) as request:
        await failed(
            request(b'GET', f'http://www.{ZONE}/'), HttpDnsError, aiodnsresolver.DnsResponseCode,
            f'GET http://www.{ZONE}:80: resolving www.{ZONE} failed: server failure (SERVFAIL) '
            'from nameserver 127.0.0.1 (DnsResponseCode)')


@on_loops_at_once
async def test_many_names_at_once_are_bounded(nameservers, tmp_path):
    async def run(relay, files, server):
        relay.delay = 0.02
        async with pool(max_lookups=10, **files.options) as request:
            results = await asyncio.gather(*(
                get(request, url(f'{number}.many', server)) for number in range(50)))
        assert {body for _, _, body in results} == {b'ok'}
        # An answer that is late has been given up, and is no lookup any more.
        assert relay.most_at_once <= 20

    await for_each(nameservers, tmp_path, run)


# --------------------------------------------------------------------------------------- the files


@on_loops
async def test_short_names_are_searched_for(relay, files):
    files.resolv_conf.write_text(
        f'nameserver 127.0.0.1\nsearch default.{ZONE} svc.{ZONE} {ZONE}\noptions ndots:5\n')
    script = Noting()
    async with everywhere(script) as server, pool(**files.options) as request:
        for _ in range(3):
            assert (await get(request, f'http://www:{server.port}/'))[2] == b'ok'
        assert relay.names() == ['www.default', 'www.svc', 'www']
        # The field is what the caller wrote.
        assert {value(head, b'host') for head in script.heads} == {b'www:%d' % server.port}
        relay.reset()
        # A whole name is tried with each domain first, because it has fewer than five dots.
        await get(request, url('five', server))
        assert relay.names() == [
            f'five.{ZONE}.default', f'five.{ZONE}.svc', f'five.{ZONE}', 'five']


@on_loops
async def test_the_case_of_a_name_makes_no_difference(relay, files):
    async with everywhere(Noting()) as server, pool(**files.options) as request:
        for name in ('www', 'WWW', 'Www'):
            await get(request, url(name, server))
    assert relay.names() == ['www']


@on_loops
async def test_the_nameservers_are_not_asked_for_what_is_known_here(relay, files):
    files.hosts.write_text('no address\n127.0.0.7 MyHost\n127.0.0.8 www.' + ZONE + '\n')
    script = Noting(CLOSING)
    names = 'myhost', f'www.{ZONE}', 'localhost', 'some.localhost'
    async with everywhere(script) as server, pool(**files.options) as request:
        for name in names:
            await get(request, f'http://{name}:{server.port}/')
    assert script.addresses == ['127.0.0.7', '127.0.0.8', '127.0.0.1', '127.0.0.1']
    assert relay.asked == []


@on_loops
async def test_a_file_that_changes_is_read_again(relay, files):
    files.resolv_conf.write_text('')
    async with everywhere(Noting()) as server, pool(**files.options) as request:
        error = await failed(
            request(b'GET', url('www', server)), HttpDnsError, None)
        assert f'no nameserver in {files.resolv_conf}' in str(error)
        files.resolv_conf.write_text('nameserver 127.0.0.1\n')
        assert (await get(request, url('www', server)))[2] == b'ok'
    assert relay.names() == ['www']


