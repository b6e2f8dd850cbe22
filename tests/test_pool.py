"""`max_connections`, `max_connections_per_origin`, `pool_timeout`: who waits, and who is next."""

import asyncio
import collections
import contextlib
import errno
import gc
import ipaddress
import itertools
import logging
import random
import socket
import ssl
import sys
import threading
import time
import weakref

import pytest

import lowhaio
from lowhaio import (
    HttpConnectionClosedError,
    HttpConnectionError,
    HttpDataError,
    HttpDnsError,
    HttpTlsError,
    Pool,
    buffered,
    streamed,
)
from tests.harness import (
    OK,
    PATIENCE,
    WAITING,
    Answering,
    AnsweringInThreads,
    Server,
    ServerAt,
    Socks,
    ThreadServer,
    asking,
    bound_to,
    ends_after,
    expiring,
    failed,
    full_backlog,
    get,
    handshake_plain,
    no_descriptor_left,
    on_clock,
    on_loops,
    on_loops_at_once,
    on_one_loop,
    passing,
    pool,
    receive_head,
    resolving,
    row,
    system_error,
    trusting,
    turns,
    until,
)


# Origins that differ in their names have one server: that of a request is the first letter of
# its path.


class Holding:
    """A script that answers each request when its path is let go, and keeps the paths in the
    order in which they came."""

    def __init__(self):
        self.paths = []
        self.connections = []  # the index of the connection of each
        self.gates = collections.defaultdict(asyncio.Event)

    async def __call__(self, peer):
        while True:
            path = (await peer.read_head()).split()[1].decode()[1:]
            self.paths.append(path)
            self.connections.append(peer.index)
            await self.gates[path].wait()
            await peer.send(OK)

    def let_go(self, *paths):
        for path in paths:
            self.gates[path].set()


def url_of(server, path):
    return f'http://{path[0]}.test:{server.port}/{path}'


async def begin(request, server, *paths):
    """Make a request for each path, one after the other, and each as far as it gets at once."""
    tasks = []
    for path in paths:
        tasks.append(asyncio.create_task(get(request, url_of(server, path))))
        await turns(2)
    return tasks


def named_origins():
    return expiring([], 3600)


@pytest.mark.parametrize('options, message', [
    *[({option: value}, f'{option} must be a number, 1 or more, or None, got {value!r}')
      for option in ('max_connections', 'max_connections_per_origin',
                     'max_requests_per_connection')
      for value in (0, -1, 1.5, '1', float('nan'))],
    *[({'pool_timeout': value}, f'pool_timeout must be a number of seconds, got {value!r}')
      for value in (-1, '1', float('nan'), float('inf'))],
])
def test_a_limit_is_checked_when_the_pool_is_made(options, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 the whole message is compared
        Pool(**options)
    assert type(caught.value) is ValueError
    assert str(caught.value) == message


class Counting:
    """A script that takes a time of its own for each response, and counts at how many requests
    it works at the same time, in all and of each host."""

    def __init__(self):
        self.working = collections.Counter()
        self.most = self.most_of_host = 0

    async def __call__(self, peer):
        while True:
            host = (await peer.read_head()).split(b'\r\n')[1]
            self.working[host] += 1
            self.most = max(self.most, self.working.total())
            self.most_of_host = max(self.most_of_host, self.working[host])
            await asyncio.sleep(random.uniform(0, 0.002))
            self.working[host] -= 1
            await peer.send(OK)


# The options, the number of origins, and how many connections there are in all and to one.
LIMITS = {
    'in all, one origin': ({'max_connections': 4}, 1, 4, 4),
    'in all, five origins': ({'max_connections': 4}, 5, 4, 4),
    'in all, one connection': ({'max_connections': 1}, 5, 1, 1),
    'of an origin, one': ({'max_connections_per_origin': 4}, 1, 4, 4),
    'of an origin, five': ({'max_connections_per_origin': 4}, 5, 20, 4),
    'both': ({'max_connections': 7, 'max_connections_per_origin': 2}, 5, 7, 2),
    'both, one origin': ({'max_connections': 7, 'max_connections_per_origin': 2}, 1, 2, 2),
}


@pytest.mark.parametrize('reuse', [
    {}, {'keep_alive_timeout': 0}, {'max_requests_per_connection': 3}], ids=str)
@on_loops
async def test_there_are_never_more_connections_than_allowed(reuse):
    async def check(case):
        limits, origins, in_all, of_origin = LIMITS[case]
        script = Counting()
        get_sock = Socks(in_all)
        options = {**limits, **reuse, 'get_sock': get_sock, 'get_dns_resolver': named_origins()}
        with row(case):
            async with Server(script) as server, pool(**options) as request:
                answers = await asyncio.gather(*[
                    get(request, url_of(server, letter))
                    for letter in itertools.islice(itertools.cycle('abcde'[:origins]), 50)])
            assert [body for _, _, body in answers] == [b'ok'] * 50
            assert script.most <= in_all
            assert script.most_of_host <= of_origin
            # All of them are made use of.
            assert get_sock.most == in_all

    await asyncio.gather(*[check(case) for case in LIMITS])


BOTH = {'max_connections': 2, 'max_connections_per_origin': 1}

# The options, the requests, those that end one after the other, and those that reach the server:
# at once, and then after each of these ends.
ORDERS = {
    'one connection': ({'max_connections': 1}, 'a1 a2 a3 a4', 'a1 a2 a3', 'a1, a2, a3, a4'),
    'one origin': (
        {'max_connections_per_origin': 3}, 'a1 a2 a3 a4 a5 a6', 'a2 a1 a4',
        'a1 a2 a3, a4, a5, a6'),
    'one connection for three origins': (
        {'max_connections': 1}, 'a1 b1 a2 c1 b2 a3 a4', 'a1 b1 a2 c1 b2 a3',
        'a1, b1, a2, c1, b2, a3, a4'),
    'two connections for three origins': (
        {'max_connections': 2}, 'a1 b1 a2 c1 b2 a3 b3', 'b1 a1 c1 b2 a3',
        'a1 b1, a2, c1, b2, a3, b3'),
    'two of one origin, after one of each of two others': (
        {'max_connections': 2}, 'b1 c1 a1 a2', 'b1 c1', 'b1 c1, a1, a2'),
    'an origin that is full does not stand in the way, at once': (
        BOTH, 'a1 a2 a3 b1', '', 'a1 b1'),
    'an origin that is full does not stand in the way, later': (
        BOTH, 'a1 b1 a2 a3 c1 d1', 'b1 a1 c1', 'a1 b1, c1, a2, d1'),
    'an origin that was full is not behind those that came later': (
        BOTH, 'a1 b1 a2 c1 d1', 'a1 b1 a2', 'a1 b1, a2, c1, d1'),
    'an origin that was full is not before those that came earlier': (
        BOTH, 'a1 b1 c1 a2 d1', 'a1 b1 c1', 'a1 b1, c1, a2, d1'),
    'origins that are full, one after the other': (
        BOTH, 'a1 b1 b2 a2 c1 a3 b3', 'a1 b1 a2 b2 c1', 'a1 b1, a2, b2, c1, a3, b3'),
}

# The same, of connections that are used again.
REUSING_ORDERS = {
    **{case: ORDERS[case] for case in (
        'one connection', 'one origin', 'two of one origin, after one of each of two others',
        'an origin that is full does not stand in the way, at once')},
    'one connection for three origins': (
        {'max_connections': 1}, 'a1 b1 a2 c1 b2 a3 a4', 'a1 a2 a3 a4 b1 b2',
        'a1, a2, a3, a4, b1, b2, c1'),
    'two connections for three origins': (
        {'max_connections': 2}, 'a1 b1 a2 c1 b2 a3 b3', 'b1 a1 b2 b3 a2',
        'a1 b1, b2, a2, b3, c1, a3'),
    'an origin that is full does not stand in the way, later': (
        BOTH, 'a1 b1 a2 a3 c1 d1', 'b1 a1 a2', 'a1 b1, c1, a2, a3'),
    'the longest waiter is first, whatever its origin, where no connection is left': (
        {'max_connections': 1}, 'a1 b1 c1 b2 a2', 'a1 a2 b1 b2', 'a1, a2, b1, b2, c1'),
}


@pytest.mark.parametrize('orders, reuse', [
    (ORDERS, {'keep_alive_timeout': 0}), (ORDERS, {'max_requests_per_connection': 1}),
    (REUSING_ORDERS, {}), (REUSING_ORDERS, {'max_requests_per_connection': 10})],
    ids=['not reused', 'one request', 'reused', 'ten requests'])
@on_loops
async def test_a_freed_place_is_for_the_longest_waiter_and_a_connection_for_that_of_its_origin(
        orders, reuse):
    async def check(case):
        limits, paths, ends, arrivals = orders[case]
        script = Holding()
        options = {**limits, **reuse, 'get_dns_resolver': named_origins()}
        first, *others = [arrival.split() for arrival in arrivals.split(', ')]
        with row(case):
            async with Server(script) as server, pool(**options) as request:
                tasks = await begin(request, server, *paths.split())
                await until(lambda: len(script.paths) == len(first))
                assert sorted(script.paths) == first
                for number, (end, [arrival]) in enumerate(
                        zip(ends.split(), others, strict=True), len(first) + 1):
                    script.let_go(end)
                    await until(lambda: len(script.paths) == number)  # noqa: B023
                    assert script.paths[-1] == arrival
                script.let_go(*paths.split())
                assert [body for _, _, body in await asyncio.gather(*tasks)] == [b'ok'] * len(
                    tasks)
            assert sorted(script.paths) == sorted(paths.split())

    await asyncio.gather(*[check(case) for case in orders])


@pytest.mark.parametrize('number', [1, 3])
@on_loops
async def test_nobody_is_overtaken_by_more_than_ten_requests_for_each_connection(number):
    """However many of another origin there are, and for as long as they come."""
    async def ask_on():
        while not late.done():
            await get(request, url_of(server, 'a'))

    async def answer(peer):
        while True:
            asked.append((await peer.read_head()).split()[1])
            await go_on.wait()
            await peer.send(OK)

    asked = []
    go_on = asyncio.Event()
    options = {'max_connections': number, 'get_dns_resolver': named_origins()}
    async with Server(answer) as server, pool(**options) as request:
        late = asyncio.get_running_loop().create_future()
        # As many as there are places, and as many that wait before the one of another origin.
        tasks = [asyncio.create_task(ask_on()) for _ in range(2 * number)]
        await until(lambda: len(asked) == number)
        [late] = await begin(request, server, 'b')
        go_on.set()
        await asyncio.gather(late, *tasks)
        # While it connects, those of the other connections go on.
        overtaking = asked.index(b'/b') - 2 * number
        assert 10 * number <= overtaking < 10 * number + number
        # One of the connections gave way to it, and it to one again.
        assert len(server.peers) == number + 2


@on_loops
async def test_requests_that_wait_for_connections_of_many_origins_share_them():
    async def work():
        for origin in origins:
            await get(request, url_of(server, origin))

    origins = iter('abcdefghijklmnopqrst' * 25)
    answering = Answering(OK)
    options = {'max_connections': 10, 'get_dns_resolver': named_origins()}
    async with Server(answering) as server, pool(**options) as request:
        await asyncio.gather(*[work() for _ in range(40)])
        assert len(answering.connections) == 500
        assert len(server.peers) < 300


@pytest.mark.parametrize('limit', ['max_connections', 'max_connections_per_origin'])
@on_loops
async def test_a_released_connection_is_handed_over_to_who_waits(limit):
    answering = Answering(OK)
    async with Server(answering) as server, pool(**{limit: 2}) as request:
        await asyncio.gather(*[get(request, server.url) for _ in range(20)])
        assert len(server.peers) == 2
    assert len(answering.connections) == 20


@on_loops
async def test_what_has_been_idle_longest_gives_way_to_another_origin():
    script = Holding()
    script.let_go('a1', 'b1', 'a2', 'c1', 'd1', 'a3')
    options = {'max_connections': 2, 'get_dns_resolver': named_origins(), 'pool_timeout': 0}
    async with Server(script) as server, pool(**options) as request:
        for path in ('a1', 'b1', 'a2', 'c1'):
            await get(request, url_of(server, path))
        # That of b, though it was made after that of a, which has been used since.
        assert await server.peers[1].closed() == b''
        await get(request, url_of(server, 'a3'))
        await get(request, url_of(server, 'd1'))
        assert await server.peers[2].closed() == b''
    assert script.connections == [0, 1, 0, 2, 0, 3]


@on_loops
async def test_a_released_connection_gives_way_to_another_origin():
    script = Holding()
    options = {'max_connections': 1, 'get_dns_resolver': named_origins()}
    async with Server(script) as server, pool(**options) as request:
        tasks = await begin(request, server, 'a1', 'b1', 'a2')
        await until(lambda: script.paths == ['a1'])
        script.let_go('a1', 'b1', 'a2')
        await asyncio.gather(*tasks)
    assert script.paths == ['a1', 'a2', 'b1']
    assert script.connections == [0, 0, 1]


# Waiting: what is told of it, and what ends it.


@on_loops
async def test_a_request_that_waits_says_so_and_for_what(caplog):
    caplog.set_level(logging.INFO, 'lowhaio')
    script = Holding()
    options = {'max_connections': 3, 'max_connections_per_origin': 2,
               'get_dns_resolver': named_origins()}
    async with Server(script) as server, pool(**options) as request:
        tasks = await begin(request, server, 'a1', 'a2', 'a3?SECRET', 'b1', 'b2', 'a4')
        url = f'http://a.test:{server.port}'
        of_origin = f'2 in use for {url}'
        assert caplog.record_tuples == [
            ('lowhaio', logging.INFO, text) for text in (
                f'[http:GET,{url}/a3] Waiting for a connection: {of_origin}, and '
                'max_connections_per_origin is 2',
                f'[http:GET,http://b.test:{server.port}/b2] Waiting for a connection: 3 in use, '
                'and max_connections is 3',
                f'[http:GET,{url}/a4] Waiting for a connection: {of_origin}, and '
                'max_connections_per_origin is 2')]
        caplog.clear()
        script.let_go('a1', 'a2', 'a3?SECRET', 'b1', 'b2', 'a4')
        await asyncio.gather(*tasks)
        assert not [text for *_, text in caplog.record_tuples if 'Waiting' in text]


@on_loops
async def test_who_waits_is_logged_by_the_adapter_of_its_request():
    class Keeping(logging.LoggerAdapter):
        def log(self, level, message, *args, **kwargs):
            said.append((level, message % args))

    said = []
    async with Server(Halves()) as server, pool(max_connections=1) as request:
        async with holding_the_only_place(request, server):
            task = asyncio.create_task(get(request, server.url, get_logger_adapter=lambda extra: (
                Keeping(logging.getLogger('quiet'), extra))))
            await turns(3)
            assert said == [
                (logging.INFO, 'Waiting for a connection: 1 in use, and max_connections is 1')]
        await task


@on_loops
async def test_an_adapter_that_raises_when_its_request_waits_fails_the_request():
    class Raising(logging.LoggerAdapter):
        def log(self, level, message, *args, **kwargs):
            raise LookupError('no')

    async with Server(Halves()) as server, pool(max_connections=1) as request:
        async with holding_the_only_place(request, server):
            await failed(
                request(b'GET', server.url, get_logger_adapter=lambda extra: Raising(
                    logging.getLogger('quiet'), extra)), HttpConnectionError, LookupError,
                f'GET {server.origin}: {WAITING}LookupError: no')
        assert (await get(request, server.url))[2] == b'ok'


TOO_MANY = system_error(OSError, errno.EMFILE)


@on_loops
async def test_an_error_for_want_of_descriptors_names_max_connections(nameserver):
    async def get_connection(scheme, host, port):
        return socket.socket()

    async def failing(request, host, kind, begin):
        with no_descriptor_left():
            error = await failed(request(b'GET', f'http://{host}:{server.port}/'), kind, OSError)
        assert str(error).startswith(f'GET http://{host}:{server.port}: {begin}: {TOO_MANY}')
        assert str(error).endswith(' (max_connections bounds the descriptors of a pool)')

    options = {'get_dns_resolver': asking((5, nameserver.address)), 'keep_alive_timeout': 0}
    async with Server(Answering(OK)) as server:
        async with pool() as request:
            host = '127.0.0.1'
            await failing(request, host, HttpConnectionError, f'connecting failed: {host}')
            # The files of the resolver.
            await failing(request, 'a.test', HttpDnsError, 'resolving a.test failed')
        async with pool(get_connection=get_connection) as request:
            await failing(request, 'a.test', HttpConnectionError, 'get_connection failed')
        async with pool(**options) as request:
            await get(request, f'http://name.test:{server.port}/')
            # The socket of the resolver.
            await failing(request, 'other.test', HttpDnsError, 'resolving other.test failed')


@contextlib.asynccontextmanager
async def holding_the_only_place(request, server):
    """A response that holds its connection, as long as nobody takes it out of the list."""
    bodies = [(await request(b'GET', server.url))[2]]
    try:
        yield bodies
    finally:
        while bodies:
            await bodies.pop().aclose()


class Halves:
    """A script whose first response is held back, but for its head, until it is let go. It
    counts the requests, and keeps the connections of them."""

    def __init__(self):
        self.connections = []
        self.go_on = asyncio.Event()
        self.is_whole = asyncio.Event()

    async def __call__(self, peer):
        while True:
            await peer.read_head()
            self.connections.append(peer.index)
            if len(self.connections) > 1:
                await peer.send(OK)
                continue
            await peer.send(OK[:-2])
            await self.go_on.wait()
            await peer.send(OK[-2:])
            self.is_whole.set()


@pytest.mark.parametrize('seconds', [0, 5])
@pytest.mark.parametrize('limit', ['max_connections', 'max_connections_per_origin'])
@on_clock
async def test_waiting_ends_after_pool_timeout(limit, seconds):
    script = Halves()
    async with (Server(script) as server,
                pool(**{limit: 1, 'pool_timeout': seconds}) as request):
        async with holding_the_only_place(request, server):
            failing = asyncio.gather(*[
                failed(request(b'POST', server.url + 'path?query'), HttpConnectionError,
                       TimeoutError, f'POST {server.origin}: {WAITING}TimeoutError: pool_timeout, '
                       f'{seconds:g} seconds, passed')
                for _ in range(2)])
            errors = await (await ends_after(seconds, failing) if seconds else failing)
            for error in errors:
                assert (error.reused, error.response_started) == (False, False)
                assert error.phase == 'pool'
            assert script.connections == [0]
        assert (await get(request, server.url))[2] == b'ok'
        # Nor does one wait for an idle connection.
        assert (await get(request, server.url))[2] == b'ok'
    assert script.connections == [0, 1, 1]


@on_clock
async def test_waiting_is_no_part_of_socket_timeout():
    script = Halves()
    options = {'max_connections': 1, 'socket_timeout': 5}
    async with Server(script) as server, pool(**options) as request:
        async with holding_the_only_place(request, server):
            task = asyncio.create_task(get(request, server.url))
            await passing(10)
            assert not task.done()
        assert (await task)[2] == b'ok'


@on_loops
async def test_a_pool_that_is_closed_fails_those_who_wait():
    script = Halves()
    request, close = Pool(max_connections=1, get_dns_resolver=named_origins())
    async with Server(script) as server:
        _, _, body = await request(b'GET', server.url)
        urls = (server.url, server.url, url_of(server, 'a'))
        tasks = [asyncio.create_task(request(b'GET', url)) for url in urls]
        await turns(3)
        await close()
        for task, url in zip(tasks, urls, strict=True):
            error = await failed(
                task, HttpConnectionError, RuntimeError,
                f'GET {url.rpartition("/")[0]}: {WAITING}RuntimeError: the pool was closed')
            assert (error.reused, error.response_started) == (False, False)
        script.go_on.set()
        assert await buffered(body) == b'ok'
        assert await server.peers[0].closed() == b''
    assert script.connections == [0]


@on_loops
async def test_who_is_cancelled_or_late_while_it_waits_is_passed_over():
    for count in range(1, 4):
        script = Halves()
        options = {'max_connections': 1, 'get_dns_resolver': named_origins()}
        async with Server(script) as server, pool(**options) as request:
            async with holding_the_only_place(request, server):
                tasks = await begin(request, server, *'abcabc')
                await turns(3)
                cancelled = random.sample(tasks, count)
                for task in cancelled:
                    task.cancel()
                await asyncio.wait(cancelled)
            results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(result, asyncio.CancelledError) for result in results] == [
            task in cancelled for task in tasks]
        assert len(script.connections) == 1 + 6 - count


@on_loops
async def test_a_request_whose_coroutine_is_closed_while_it_waits_is_passed_over():
    script = Halves()
    async with Server(script) as server, pool(max_connections=1) as request:
        async with holding_the_only_place(request, server):
            coroutine = request(b'GET', server.url)
            coroutine.send(None)
            task = asyncio.create_task(get(request, server.url))
            await turns(1)
            coroutine.close()
        assert (await task)[2] == b'ok'
    assert script.connections == [0, 1]


async def free_a_place(script, bodies):
    """Within this turn of the loop. A body that is dropped closes its connection."""
    bodies.pop()


async def release_a_connection(script, bodies):
    """Within this turn of the loop, since all of it has come."""
    assert await buffered(bodies.pop()) == b'ok'


@pytest.mark.parametrize('others', [0, 1, 2])
@pytest.mark.parametrize('is_cancelled_first', [True, False])
@pytest.mark.parametrize('free', [free_a_place, release_a_connection])
@pytest.mark.parametrize('limit', ['max_connections', 'max_connections_per_origin'])
@on_loops
async def test_what_is_for_one_cancelled_in_the_same_tick_goes_to_the_next(
        limit, free, is_cancelled_first, others):
    script = Halves()
    async with Server(script) as server, pool(**{limit: 1, 'pool_timeout': 10}) as request:
        async with holding_the_only_place(request, server) as bodies:
            first, *tasks = [
                asyncio.create_task(get(request, server.url)) for _ in range(1 + others)]
            script.go_on.set()
            await script.is_whole.wait()
            await turns(3)
            if is_cancelled_first:
                first.cancel()
            await free(script, bodies)
            first.cancel()
            assert not first.done()
            with pytest.raises(asyncio.CancelledError):
                await first
            for task in tasks:
                assert (await task)[2] == b'ok'
        # And afterwards it is free.
        for _ in range(2):
            assert (await get(request, server.url))[2] == b'ok'
        index = 1 if free is free_a_place else 0
        assert script.connections == [0] + [index] * (others + 2)


@on_loops
async def test_a_place_for_one_cancelled_in_the_same_tick_goes_to_the_next_origin():
    for free in (free_a_place, release_a_connection):
        script = Halves()
        options = {'max_connections': 1, 'get_dns_resolver': named_origins()}
        async with Server(script) as server, pool(**options) as request:
            async with holding_the_only_place(request, server) as bodies:
                first = asyncio.create_task(get(request, server.url))
                [second] = await begin(request, server, 'a')
                script.go_on.set()
                await script.is_whole.wait()
                await free(script, bodies)
                first.cancel()
                assert (await second)[2] == b'ok'
        assert script.connections == [0, 1]


@pytest.mark.parametrize('others', [0, 1])
@pytest.mark.parametrize('is_late_first', [True, False])
@on_clock
async def test_what_is_freed_in_the_tick_of_pool_timeout_is_not_lost(is_late_first, others):
    seconds = 5

    def free():
        del bodies[:]  # closes the connection

    script = Halves()
    loop = asyncio.get_running_loop()
    async with (Server(script) as server,
                pool(max_connections=1, pool_timeout=seconds) as request):
        async with holding_the_only_place(request, server) as bodies:
            # Three timers, one after the other, but all due when the loop gets to them.
            if not is_late_first:
                loop.call_later(seconds, free)
                await passing(0.01)
            first = asyncio.create_task(get(request, server.url))
            await passing(0.01)
            if is_late_first:
                loop.call_later(seconds, free)
                await passing(0.01)
            tasks = [asyncio.create_task(get(request, server.url)) for _ in range(others)]
            await turns(2)
            assert bodies
            loop.set_time(loop.now + seconds)
            if is_late_first:
                await failed(first, HttpConnectionError, TimeoutError)
            else:
                assert (await first)[2] == b'ok'
            for task in tasks if is_late_first else []:
                assert (await task)[2] == b'ok'
            await asyncio.gather(*tasks, return_exceptions=True)
        assert (await get(request, server.url))[2] == b'ok'


@on_loops
async def test_an_origin_whose_last_waiter_was_cancelled_keeps_its_limit():
    """A request may come between the cancellation and what the waiter makes of it."""
    script = Halves()
    request, close = Pool(max_connections_per_origin=1)
    async with Server(script) as server:
        async with holding_the_only_place(request, server) as bodies:
            waiting = asyncio.create_task(get(request, server.url))
            await turns(3)
            waiting.cancel()
            await bodies.pop().aclose()
            for _ in range(2):
                assert (await get(request, server.url))[2] == b'ok'
            assert waiting.cancelled()
            await close()
            assert await server.peers[-1].closed() == b''
        assert script.connections == [0, 1, 1]


@on_loops
async def test_who_was_served_in_time_leaves_no_timer():
    """It would hold the connection until the time were over."""
    socks = weakref.WeakSet()

    def get_sock(family):
        sock = socket.socket(family)
        socks.add(sock)
        return sock

    options = {'max_connections': 1, 'pool_timeout': 1000, 'socket_timeout': 1000,
               'keep_alive_timeout': 1000, 'get_sock': get_sock}
    async with Server(Answering(OK)) as server:
        async with pool(**options) as request:
            await asyncio.gather(*[get(request, server.url) for _ in range(3)])
            assert len(socks) == 1
        del request
        gc.collect()
        await until(lambda: not socks)


async def refused_by_all(request, urls):
    for url in urls:
        await failed(request(b'GET', url), HttpConnectionError, ConnectionRefusedError)


async def late_for_all(request, urls):
    for url in urls:
        await failed(request(b'GET', url), HttpConnectionError, TimeoutError)


async def cancelled_for_all(request, urls):
    for url in urls:
        task = asyncio.create_task(request(b'GET', url))
        await turns(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize('end, options', [
    (refused_by_all, {'max_connections': 2}),
    (late_for_all, {'max_connections': 1, 'pool_timeout': 0}),
    (cancelled_for_all, {'max_connections': 1}),
])
@on_loops
async def test_origins_and_requests_that_are_over_are_forgotten(end, options):
    def objects():
        gc.collect()
        return len(gc.get_objects())

    [sock] = bound_to('127.0.0.1')
    port = sock.getsockname()[1]
    async with Server(Halves()) as server, pool(**options) as request:
        async with holding_the_only_place(request, server):
            urls = [f'http://127.1.{number // 256}.{number % 256}:{port}/'
                    for number in range(1024)]
            await end(request, urls[:512])  # as many as are remembered parsed
            before = objects()
            await end(request, urls[512:])
            assert objects() - before < 300
    sock.close()


# How a place becomes free. There is only one, and the next request waits for it.


class First:
    """A script that, once told to, does something to the first request. It answers the others,
    of whatever connection."""

    def __init__(self, act):
        self.act = act
        self.is_there = asyncio.Event()
        self.go_on = asyncio.Event()

    async def __call__(self, peer):
        if not peer.index:
            await peer.read_head()
            self.is_there.set()
            await self.go_on.wait()
            await self.act(peer)
        await Answering(OK)(peer)


def sending(data):
    async def act(peer):
        await peer.send(data)

    return act


def sending_and_closing(data):
    async def act(peer):
        await peer.send(data)
        raise ConnectionResetError

    return act


async def resetting(peer):
    peer.reset()
    raise ConnectionResetError


# What the server does, the options, what the request raises, and whether its connection is used
# again.
SERVERS_WAYS = {
    'a response': (sending(OK), {}, None, True),
    'no reuse': (sending(OK), {'keep_alive_timeout': 0}, None, False),
    'the last request': (sending(OK), {'max_requests_per_connection': 1}, None, False),
    'connection: close': (
        sending(OK.replace(b'\r\n\r\n', b'\r\nconnection: close\r\n\r\n')), {}, None, False),
    'to the end': (sending_and_closing(b'HTTP/1.1 200 OK\r\n\r\nok'), {}, None, False),
    'bytes after the end': (sending(OK + b'x'), {}, None, False),
    'a bad head': (sending(b'HTTP/2 200\r\n\r\n'), {}, HttpDataError, False),
    'closed': (sending_and_closing(b''), {}, HttpConnectionClosedError, False),
    'closed in the body': (sending_and_closing(OK[:-1]), {}, HttpConnectionClosedError, False),
    'reset': (resetting, {}, HttpConnectionClosedError, False),
    'silent': (
        lambda peer: passing(5), {'socket_timeout': 5}, HttpDataError, False),
}


@pytest.mark.parametrize('limit', ['max_connections', 'max_connections_per_origin'])
@on_clock
async def test_a_place_is_free_once_a_response_has_ended(limit):
    async def check(case):
        act, options, kind, is_reused = SERVERS_WAYS[case]
        script = First(act)
        async with (Server(script) as server,
                    pool(**{limit: 1, 'get_sock': Socks(1), **options}) as request):
            with row(case):
                first = asyncio.create_task(get(request, server.url))
                await script.is_there.wait()
                waiting = [asyncio.create_task(get(request, server.url)) for _ in range(2)]
                await turns(3)
                assert len(server.peers) == 1
                script.go_on.set()
                if kind is None:
                    assert (await first)[2] == b'ok'
                else:
                    await failed(first, kind, None)
                for task in waiting:
                    assert (await task)[2] == b'ok'
                assert (len(server.peers) == 1) == is_reused

    await asyncio.gather(*[check(case) for case in SERVERS_WAYS])


class Unwilling:
    """A script that answers some requests only in part, and some not at all."""

    def __init__(self):
        self.arrived = []

    async def __call__(self, peer):
        while True:
            path = (await peer.read_head()).split()[1]
            self.arrived.append(path)
            if path == b'/half':
                await peer.send(OK[:-1])
            if path != b'/':
                await peer.reader.read(1)
                await asyncio.Event().wait()
            await peer.send(OK)


@contextlib.asynccontextmanager
async def response_in_half(request, server, script):
    bodies = [(await request(b'GET', server.url + 'half'))[2]]
    yield bodies


@contextlib.asynccontextmanager
async def cancelled_afterwards(awaitable):
    task = asyncio.create_task(awaitable)
    yield
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@contextlib.asynccontextmanager
async def a_body_closed(request, server, script):
    async with response_in_half(request, server, script) as bodies:
        yield
        await bodies.pop().aclose()


@contextlib.asynccontextmanager
async def a_body_dropped(request, server, script):
    async with response_in_half(request, server, script) as bodies:
        yield
        bodies.clear()


@contextlib.asynccontextmanager
async def a_body_dropped_in_a_cycle(request, server, script):
    async with response_in_half(request, server, script) as bodies:
        yield
        cycle = [bodies.pop()]
        cycle.append(cycle)
        del cycle
        gc.collect()


@contextlib.asynccontextmanager
async def a_body_cancelled(request, server, script):
    async with response_in_half(request, server, script) as bodies:
        async with cancelled_afterwards(buffered(bodies.pop())):
            yield


@contextlib.asynccontextmanager
async def a_head_cancelled(request, server, script):
    async with cancelled_afterwards(request(b'GET', server.url + 'none')):
        await until(lambda: script.arrived)
        yield


@contextlib.asynccontextmanager
async def a_request_closed(request, server, script):
    """As the interpreter does with what nobody awaits to its end."""
    coroutine = request(b'GET', server.url + 'none')
    while not script.arrived:
        waited_for = coroutine.send(None)
        waited_for._asyncio_future_blocking = False
        await asyncio.wait([waited_for], timeout=0.1)
    yield
    coroutine.close()


@contextlib.asynccontextmanager
async def sending_cancelled(request, server, script):
    async with cancelled_afterwards(request(
            b'PUT', server.url + 'none', headers=((b'content-length', b'100000000'),),
            body=streamed(bytes(100_000_000)))):
        await until(lambda: script.arrived)
        yield


@contextlib.asynccontextmanager
async def a_callers_body_cancelled(request, server, script):
    async def body():
        yield b'a'
        await asyncio.Event().wait()

    async with cancelled_afterwards(request(
            b'PUT', server.url + 'none', headers=((b'content-length', b'2'),), body=body)):
        await until(lambda: script.arrived)
        yield


@contextlib.asynccontextmanager
async def connecting_cancelled(request, server, script):
    [sock] = bound_to('127.0.0.1')
    with sock, full_backlog(sock) as port:
        async with cancelled_afterwards(request(b'GET', f'http://127.0.0.1:{port}/')):
            await turns(3)
            yield


@contextlib.asynccontextmanager
async def a_handshake_cancelled(request, server, script):
    """That of a server that waits for the end of a head instead."""
    async with cancelled_afterwards(request(b'GET', f'https://127.0.0.1:{server.port}/')):
        await until(lambda: server.peers)
        await turns(3)
        yield


CALLERS_WAYS = [
    a_body_closed, a_body_dropped, a_body_dropped_in_a_cycle, a_body_cancelled, a_head_cancelled,
    a_request_closed, sending_cancelled, a_callers_body_cancelled, connecting_cancelled,
    a_handshake_cancelled]


@pytest.mark.parametrize('way', CALLERS_WAYS)
@on_loops
async def test_a_place_is_free_once_the_caller_has_given_it_up(way):
    script = Unwilling()
    options = {'max_connections': 1, 'get_ssl_context': trusting, 'get_sock': Socks(1)}
    async with Server(script) as server, pool(**options) as request:
        async with way(request, server, script):
            waiting = [asyncio.create_task(get(request, server.url)) for _ in range(2)]
            await turns(5)
            assert script.arrived.count(b'/') == 0
        for task in waiting:
            assert (await task)[2] == b'ok'


def refusing_later():
    """A `get_dns_resolver` that knows each name only once."""
    known = set()

    async def resolve(host):
        if host in known:
            raise OSError('not again')
        known.add(host)
        return [ipaddress.IPv4Address('127.0.0.1')]

    return resolving(resolve)


def sock_for_all_but(number):
    numbers = itertools.count(1)

    def get_sock(family):
        if next(numbers) == number:
            raise OSError('not this time')
        return socket.socket(family)

    return get_sock


def no_context():
    raise OSError('no context')


async def connection_refused(scheme, host, port):
    if scheme == 'https':
        raise OSError('not there')
    sock = socket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (host, port))
    return sock


# The URL of who is next, of a server whose port is free, one that does not speak TLS, and the
# server of the others; the options, and what it fails with.
PLACE_FAILURES = {
    'refused': ('http://127.0.0.1:{free}/', {}, HttpConnectionError, ConnectionRefusedError),
    'no socket': ('http://127.0.0.1:{plain}/', {'get_sock': lambda: sock_for_all_but(2)},
                  HttpConnectionError, OSError),
    'no name any more': ('http://a.test:{ok}/', {'get_dns_resolver': refusing_later},
                         HttpDnsError, OSError),
    'no TLS': ('https://127.0.0.1:{plain}/', {}, HttpTlsError, ssl.SSLError),
    'no context': ('https://127.0.0.1:{plain}/', {'get_ssl_context': lambda: no_context},
                   HttpTlsError, OSError),
    'get_connection': ('https://127.0.0.1:{ok}/', {'get_connection': lambda: connection_refused},
                       HttpConnectionError, OSError),
}


@pytest.mark.parametrize('free', [free_a_place, release_a_connection])
@on_loops
async def test_a_place_is_free_once_its_connection_could_not_be_made(free):
    async def check(case):
        url, options, kind, cause = PLACE_FAILURES[case]
        script = Halves()
        options = {option: value() for option, value in options.items()}
        options = {'max_connections': 1, 'get_ssl_context': trusting, **options}
        with row(case):
            async with Server(script) as server, pool(**options) as request:
                async with holding_the_only_place(request, server) as bodies:
                    url = url.format(free=sock.getsockname()[1], plain=plain.port, ok=server.port)
                    failing = asyncio.create_task(request(b'GET', url))
                    await turns(2)
                    waiting = [asyncio.create_task(get(request, server.url)) for _ in range(2)]
                    await turns(2)
                    assert not failing.done()
                    script.go_on.set()
                    await script.is_whole.wait()
                    await free(script, bodies)
                    await failed(failing, kind, cause)
                    for task in waiting:
                        assert (await task)[2] == b'ok'

    [sock] = bound_to('127.0.0.1')
    with sock, ThreadServer(handshake_plain) as plain:
        await asyncio.gather(*[check(case) for case in PLACE_FAILURES])


@on_loops
async def test_one_cancelled_in_the_lookup_after_its_wait_gives_back_what_it_got():
    async def resolve(host):
        names.append(host)
        if names.count('a.test') > 1 and host == 'a.test':
            await asyncio.Event().wait()
        return [ipaddress.IPv4Address('127.0.0.1')]

    for free in (free_a_place, release_a_connection):
        names = []
        script = Halves()
        options = {'max_connections': 1, 'get_dns_resolver': resolving(resolve)}
        async with Server(script) as server, pool(**options) as request:
            async with holding_the_only_place(request, server) as bodies:
                first, second = (asyncio.create_task(get(request, url)) for url in (
                    url_of(server, 'a'), url_of(server, 'b')))
                await turns(3)
                script.go_on.set()
                await script.is_whole.wait()
                await free(script, bodies)
                await until(lambda: names.count('a.test') == 2)  # noqa: B023
                assert len(script.connections) == 1
                first.cancel()
                assert (await second)[2] == b'ok'
        assert script.connections == [0, 1]


@on_loops
async def test_one_cancelled_in_the_lookup_after_its_wait_gives_back_the_connection():
    async def resolve(host):
        names.append(host)
        if len(names) == 4:
            await asyncio.Event().wait()
        return [ipaddress.IPv4Address('127.0.0.1')]

    names = []
    script = Halves()
    options = {'max_connections': 1, 'get_dns_resolver': resolving(resolve)}
    async with Server(script) as server, pool(**options) as request:
        _, _, body = await request(b'GET', url_of(server, 'a'))
        first, second = await begin(request, server, 'a', 'a')
        assert len(names) == 3
        script.go_on.set()
        assert await buffered(body) == b'ok'
        await until(lambda: len(names) == 4)
        first.cancel()
        assert (await second)[2] == b'ok'
    assert script.connections == [0, 0]


@on_clock
async def test_a_connection_given_back_in_the_lookup_closes_when_its_time_to_idle_is_over():
    """It may have passed already: nothing idles while a request has the connection."""
    async def resolve(host):
        names.append(host)
        if len(names) == 3:
            await asyncio.Event().wait()
        return [ipaddress.IPv4Address('127.0.0.1')]

    for seconds in (3, 6):
        names = []
        script = Halves()
        options = {'max_connections': 1, 'keep_alive_timeout': 5, 'socket_timeout': 100,
                   'get_dns_resolver': resolving(resolve)}
        async with Server(script) as server, pool(**options) as request:
            _, _, body = await request(b'GET', url_of(server, 'a'))
            [waiting] = await begin(request, server, 'a')
            assert len(names) == 2
            script.go_on.set()
            assert await buffered(body) == b'ok'
            await until(lambda: len(names) == 3)  # noqa: B023
            await passing(seconds)
            waiting.cancel()
            await passing(3)
            assert server.peers[0].reader.at_eof()


@on_loops
async def test_the_place_of_an_idle_connection_is_free_once_it_has_closed():
    """To a new connection, which must not even be waited for."""
    async def closing(peer):
        await peer.read_head()
        await peer.send(OK)

    for script, options in ((closing, {}), (Answering(OK), {'keep_alive_timeout': 0.02})):
        get_sock = Socks(1)
        options = {**options, 'pool_timeout': 0, 'max_connections': 1,
                   'max_connections_per_origin': 1, 'get_sock': get_sock}
        async with Server(script) as server, pool(**options) as request:
            for number in range(1, 4):
                assert (await get(request, server.url))[2] == b'ok'
                await until(lambda: not get_sock.open())  # noqa: B023
                assert len(server.peers) == number


@pytest.mark.parametrize('way', ['closed', 'reset', 'data'])
@on_loops
async def test_a_connection_handed_over_is_not_used_when_the_server_did_something_meanwhile(way):
    """In its place there is a new one."""
    go_on, is_done = threading.Event(), threading.Event()

    def script(sock):
        receive_head(sock)
        sock.sendall(OK[:-1])
        if sock is not server.socks[0]:
            sock.sendall(OK[-1:])
            AnsweringInThreads()(sock)
        go_on.wait(PATIENCE)
        sock.sendall(OK[-1:])
        is_read.wait(PATIENCE)
        if way == 'data':
            sock.sendall(OK)
        elif way == 'closed':
            sock.shutdown(socket.SHUT_WR)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\1\0\0\0\0\0\0\0')
            socket.socket.close(sock)
        is_done.set()

    is_read = threading.Event()
    with ThreadServer(script) as server:
        async with pool(max_connections=1, get_sock=Socks(1)) as request:
            _, _, body = await request(b'GET', server.url)
            waiting = [asyncio.create_task(get(request, server.url)) for _ in range(3)]
            await turns(3)
            go_on.set()
            assert await buffered(body) == b'ok'  # and at once it is handed over
            is_read.set()
            assert is_done.wait(PATIENCE)
            time.sleep(0.003)
            for task in waiting:
                assert (await task)[2] == b'ok'
        assert len(server.socks) == 2


@on_loops
async def test_a_connection_handed_over_is_not_used_when_its_address_is_not_current_any_more():
    addresses = ['127.0.0.1']

    async def resolve(host):
        return [ipaddress.ip_address(address) for address in addresses]

    old, new = Halves(), Answering(OK)
    socks = bound_to('127.0.0.1', '127.0.0.2')
    options = {'max_connections': 1, 'get_sock': Socks(1), 'get_dns_resolver': resolving(resolve)}
    async with (ServerAt(socks[0], old) as server, ServerAt(socks[1], new),
                pool(**options) as request):
        _, _, body = await request(b'GET', url_of(server, 'a'))
        tasks = await begin(request, server, 'a', 'a')
        addresses[:] = ['127.0.0.2']
        old.go_on.set()
        assert await buffered(body) == b'ok'
        for task in tasks:
            assert (await task)[2] == b'ok'
        assert await server.peers[0].closed() == b''
    assert old.connections == [0]
    assert new.connections == [0, 0]


@on_loops
async def test_after_its_last_request_a_connection_is_closed_and_nobody_is_told_before():
    for limit in (1, 2, 3):
        answering = Answering(OK)
        async with (Server(answering) as server,
                    pool(max_requests_per_connection=limit, get_sock=Socks(1)) as request):
            for number in range(6):
                assert (await get(request, server.url))[2] == b'ok'
                if number % limit == limit - 1:
                    assert await server.peers[-1].closed() == b''
        assert answering.connections == [number // limit for number in range(6)]
        assert set(answering.heads) == {b'GET / HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n\r\n' %
                                        server.port}


class Calls:
    """Counts the calls of functions that lowhaio makes, and those of its own functions."""

    def __enter__(self):
        self.count = 0
        self.before = sys.getprofile()
        sys.setprofile(self.profile)
        return self

    def __exit__(self, kind, error, traceback):
        sys.setprofile(self.before)

    def profile(self, frame, event, arg):
        if event in ('call', 'c_call') and frame.f_code.co_filename == lowhaio.__file__:
            self.count += 1


async def calls_beside_waiters(number, origins):
    """The calls for 20 requests, one after the other, that wait before a number of others."""
    script = Halves()
    options = {'max_connections': 1, 'get_dns_resolver': named_origins(), 'pool_timeout': 30}
    async with Server(script) as server, pool(**options) as request:
        async with holding_the_only_place(request, server) as bodies:
            counted = [asyncio.create_task(get(request, url_of(server, origin)))
                       for origin in itertools.islice(itertools.cycle(origins), 20)]
            others = [asyncio.create_task(get(request, url_of(server, origin)))
                      for origin in itertools.islice(itertools.cycle(origins), number)]
            await turns(3)
            with Calls() as calls:
                await bodies.pop().aclose()
                await counted[-1]
        for task in others:
            task.cancel()
        await asyncio.gather(*counted, *others, return_exceptions=True)
    return calls.count


@pytest.mark.parametrize('origins', ['a', 'abcd'])
@on_loops
async def test_the_work_of_a_request_does_not_grow_with_the_requests_that_wait(origins):
    few = await calls_beside_waiters(10, origins)
    many = await calls_beside_waiters(1000, origins)
    assert 400 < few < many * 1.5
    assert many < few * 1.5


async def calls_beside_idle_connections(number, options):
    """The calls for 20 requests beside a number of idle connections, half of them to the origin
    of the requests, half to others."""
    script = Holding()
    options = {'max_connections': number, 'get_dns_resolver': named_origins(), **options}
    async with Server(script) as server, pool(**options) as request:
        tasks = []
        for index in range(number):
            host = f'other{index}.test' if index % 2 else 'a.test'
            url = f'http://{host}:{server.port}/all'
            tasks.append(asyncio.create_task(get(request, url)))
        await until(lambda: len(script.paths) == number)
        script.let_go('all')
        await asyncio.gather(*tasks)
        with Calls() as calls:
            for index in range(20):
                host = f'new{index}.test' if index % 2 else 'a.test'
                await get(request, f'http://{host}:{server.port}/all')
    return calls.count


@on_one_loop
async def test_the_work_of_a_request_does_not_grow_with_the_connections_that_idle():
    few = await calls_beside_idle_connections(10, {})
    many = await calls_beside_idle_connections(500, {})
    assert 400 < few < many * 1.5
    assert many < few * 1.5


@on_loops_at_once
async def test_a_cancellation_in_the_turn_in_which_pool_timeout_passes_wins():
    loop = asyncio.get_running_loop()
    async with Server(Answering(OK[:-1])) as server, pool(
            max_connections=1, pool_timeout=0.05) as request:
        _, _, held = await request(b'GET', server.url)
        waiting = asyncio.create_task(request(b'GET', server.url))
        await turns(3)
        loop.call_later(0.06, waiting.cancel)
        time.sleep(0.15)
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await held.aclose()
