"""Host names become addresses: what is asked for, remembered and shared, how a lookup ends, and
what a resolver of the caller's may do.
"""

import asyncio
import contextlib
import functools
import ipaddress
import math
import logging
import os
import pathlib
import tempfile
import threading
import time
import traceback
import types
from ipaddress import IPv4Address

import aiodnsresolver
import pytest

from lowhaio import HttpConnectionError, HttpDnsError, Pool, get_dns_resolver_default
from tests.harness import (
    OK,
    PATIENCE,
    Answering,
    Server,
    ServerAt,
    ServerAtEach,
    asking,
    bound_to,
    cancelling,
    expiring,
    failed,
    forever,
    get,
    local_address,
    measured,
    no_descriptor_left,
    on_clock,
    on_loops,
    on_loops_at_once,
    passing,
    pool,
    resolving,
    row,
    run_until,
    turns,
    until,
)


@on_loops
async def test_a_name_is_asked_for_once_while_its_records_are_fresh(nameserver):
    resolvers = []

    def get_dns_resolver(**kwargs):
        resolvers.append(asking((5, nameserver.address))(**kwargs))
        return resolvers[-1]

    answering = Answering(OK)
    options = {'get_dns_resolver': get_dns_resolver, 'keep_alive_timeout': 0}
    async with Server(answering) as server, pool(**options) as request:
        await get(request, server.url)
        assert resolvers == []  # an IP address needs none
        for _ in range(3):
            assert (await get(request, f'http://name.test:{server.port}/'))[2] == b'ok'
    assert answering.connections == [0, 1, 2, 3]
    assert answering.heads[-1] == b'GET / HTTP/1.1\r\nhost: name.test:%d\r\n\r\n' % server.port
    assert nameserver.queries == {'name.test': 1}
    assert len(resolvers) == 1


@on_loops
async def test_records_that_live_for_no_time_are_asked_for_each_time_if_min_ttl_is_0(nameserver):
    nameserver.ttl = 0
    options = {'get_dns_resolver': asking((5, nameserver.address)), 'min_ttl': 0}
    async with Server(Answering(OK)) as server, pool(**options) as request:
        for _ in range(3):
            await get(request, f'http://name.test:{server.port}/')
    assert nameserver.queries == {'name.test': 3}


@on_loops
async def test_the_addresses_of_a_custom_resolver_are_kept_while_they_are_fresh():
    asked = []
    options = {'get_dns_resolver': expiring(asked, 3600)}
    async with Server(Answering(OK)) as server, pool(**options) as request:
        for name in ('a.test', 'b.test', 'A.test', 'a.test.'):
            await get(request, f'http://{name}:{server.port}/')
    assert asked == ['a.test', 'b.test']


@on_clock
async def test_the_addresses_of_a_custom_resolver_are_asked_for_again_when_they_are_stale():
    asked = []
    async with (Server(Answering(OK)) as server,
                pool(get_dns_resolver=expiring(asked, 10)) as request):
        for seconds, lookups in ((0, 1), (9.9, 1), (0.2, 2), (9, 2), (2, 3)):
            await passing(seconds)
            await get(request, f'http://a.test:{server.port}/')
            assert len(asked) == lookups


@on_clock
async def test_addresses_that_expire_at_no_number_are_asked_for_again_after_min_ttl():
    asked = []

    async def resolve(host):
        asked.append(host)
        return [aiodnsresolver.IPv4AddressExpiresAt('127.0.0.1', expires_at=math.nan)]

    async with Server(Answering(OK)) as server, pool(
            get_dns_resolver=resolving(resolve), min_ttl=5) as request:
        for seconds, lookups in ((0, 1), (4, 1), (1, 2)):
            await passing(seconds)
            await get(request, f'http://a.test:{server.port}/')
            assert len(asked) == lookups


@on_loops
async def test_addresses_are_as_fresh_as_the_stalest_of_them():
    asked = []
    options = {'get_dns_resolver': expiring(asked, 3600, 0), 'min_ttl': 0}
    async with Server(Answering(OK)) as server, pool(**options) as request:
        for _ in range(3):
            await get(request, f'http://a.test:{server.port}/')
    assert len(asked) == 3


@on_loops
async def test_plain_addresses_are_asked_for_each_time():
    asked = []

    async def resolve(host):
        asked.append(host)
        return (ipaddress.IPv4Address('127.0.0.1'),)

    answering = Answering(OK)
    options = {'get_dns_resolver': resolving(resolve)}
    async with Server(answering) as server, pool(**options) as request:
        for _ in range(3):
            await get(request, f'http://a.test:{server.port}/')
    assert asked == ['a.test'] * 3
    assert answering.connections == [0, 0, 0]


@on_loops
async def test_only_the_names_looked_up_last_are_remembered():
    asked = []

    def get_sock(family):
        raise OSError('no socket is needed')

    options = {'get_dns_resolver': expiring(asked, 3600), 'get_sock': get_sock}
    names = [f'{number}.test' for number in range(1025)]
    async with pool(**options) as request:
        for name in (*names, names[1], names[1024], names[0]):
            with pytest.raises(HttpConnectionError, match='no socket is needed'):
                await request(b'GET', f'http://{name}/')
    assert asked == [*names, names[0]]


@on_loops
async def test_a_connection_to_an_address_that_is_no_longer_current_is_not_reused():
    current = ['127.0.0.1']
    ends = []

    async def resolve(host):
        return [ipaddress.ip_address(address) for address in current]

    async def script(peer):
        try:
            await Answering(OK)(peer)
        finally:
            ends.append(local_address(peer))

    first_sock, second_sock = bound_to('127.0.0.1', '127.0.0.2')
    options = {'get_dns_resolver': resolving(resolve)}
    async with (ServerAt(first_sock, script) as first, ServerAt(second_sock, script) as second,
                pool(**options) as request):
        url = f'http://a.test:{first.port}/'
        await get(request, url)
        current.append('127.0.0.2')
        await get(request, url)  # the first is still among the addresses
        assert (len(first.peers), len(second.peers), ends) == (1, 0, [])
        current.remove('127.0.0.1')
        await get(request, url)
        assert (len(first.peers), len(second.peers)) == (1, 1)
        await until(lambda: ends == ['127.0.0.1'])
        await get(request, url)
    assert (len(first.peers), len(second.peers)) == (1, 1)


NO_ADDRESS = {
    'the name does not exist': (
        'NXDOMAIN', aiodnsresolver.DnsRecordDoesNotExist,
        'there is no such name (DnsRecordDoesNotExist)', 1),
    'no answer in the response': (
        [], aiodnsresolver.DnsNoMatchingAnswers,
        'the name has no address (DnsNoMatchingAnswers)', 1),
    'the nameserver fails': (
        'SERVFAIL', aiodnsresolver.DnsResponseCode,
        'server failure (SERVFAIL) (DnsResponseCode)', 2),
    'the nameserver refuses': (
        'REFUSED', aiodnsresolver.DnsResponseCode, 'refused (REFUSED) (DnsResponseCode)', 2),
    'the nameserver says what nobody knows': (
        'NOTZONE', aiodnsresolver.DnsResponseCode, 'response code 10 (DnsResponseCode)', 2),
}


@on_loops
async def test_a_name_that_has_no_address_is_an_error(nameserver):
    options = {'get_dns_resolver': asking((5, nameserver.address), (5, nameserver.address)),
               'min_ttl': 0}
    for case, (answer, cause, text, queries) in NO_ADDRESS.items():
        with row(case):
            nameserver.answers['missing.test'] = answer
            nameserver.queries.clear()
            async with Server(Answering(OK)) as server, pool(**options) as request:
                for number in (1, 2):  # with min_ttl 0, no error is remembered
                    error = await failed(
                        request(b'GET', 'https://MISSING.test.:8443/path?query'),
                        HttpDnsError, cause,
                        f'GET https://missing.test:8443: resolving missing.test failed: {text}')
                    assert (error.reused, error.response_started) == (False, False)
                    assert nameserver.queries == {'missing.test': queries * number}
                # Nor does it stand in the way of the record, once there is one.
                nameserver.answers['missing.test'] = ['127.0.0.1']
                assert (await get(request, f'http://missing.test:{server.port}/'))[2] == b'ok'


@on_loops
async def test_silent_nameservers_are_an_error_after_the_resolvers_own_timeouts(silent_address):
    options = {'get_dns_resolver': asking((0.02, silent_address), (0.02, silent_address))}
    async with pool(**options) as request:
        error = await failed(
            request(b'GET', 'http://name.test/'), HttpDnsError, TimeoutError,
            'GET http://name.test:80: resolving name.test failed: TimeoutError: no nameserver '
            'answered in the time that the resolver gives')
    assert type(error.__cause__.__cause__) is aiodnsresolver.DnsTimeout


@on_loops
async def test_a_lookup_ends_after_socket_timeout(silent_address):
    options = {'get_dns_resolver': asking((60, silent_address)), 'socket_timeout': 0.05}
    async with pool(**options) as request:
        await failed(
            request(b'GET', 'http://name.test/'), HttpDnsError, TimeoutError,
            'GET http://name.test:80: resolving name.test failed: TimeoutError: socket_timeout, '
            '0.05 seconds, passed')


@on_clock
async def test_socket_timeout_bounds_all_of_a_lookup_with_many_timeouts_in_it(silent_address):
    nameservers = [(0.03, silent_address)] * 100
    options = {'get_dns_resolver': asking(*nameservers), 'socket_timeout': 0.1}
    async with pool(**options) as request:
        seconds, task = await measured(request(b'GET', 'http://name.test/'))
        await failed(
            task, HttpDnsError, TimeoutError,
            'GET http://name.test:80: resolving name.test failed: TimeoutError: socket_timeout, '
            '0.1 seconds, passed')
    assert seconds == 0.1


@on_loops
async def test_the_timeout_of_one_nameserver_leaves_no_cancellation(nameserver, silent_address):
    options = {'get_dns_resolver': asking(
        (0.02, silent_address), (0.02, silent_address), (5, nameserver.address))}
    async with Server(Answering(OK)) as server, pool(**options) as request:
        url = f'http://name.test:{server.port}/'
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
            assert (await get(request, url))[2] == b'ok'
            assert asyncio.current_task().cancelling() == 0
            await asyncio.sleep(0)
            group.create_task(get(request, url))


@on_loops
async def test_a_task_that_was_cancelled_before_is_left_as_it_was(silent_address):
    """One that caught its cancellation and goes on, to say goodbye over HTTP for example."""
    options = {'get_dns_resolver': asking((0.02, silent_address), (0.02, silent_address))}

    async def request_after_a_cancellation():
        asyncio.current_task().cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        assert asyncio.current_task().cancelling() == 1
        async with pool(**options) as request:
            await failed(request(b'GET', 'http://name.test/'), HttpDnsError, TimeoutError)
        async with pool(socket_timeout=0.01, **options) as request:
            await failed(request(b'GET', 'http://name.test/'), HttpDnsError, TimeoutError)

    await asyncio.create_task(request_after_a_cancellation())


# A timer of a lookup is at 0.03 seconds. The loop, blocked for 0.09, finds both timers due. They
# are so far apart that a busy machine does not stop between them.
SAME_TICK = {'cancelled before': 0.006, 'cancelled after': 0.06}

TIMERS = {
    'of the only nameserver': ([0.03], 10),
    'of the first nameserver': ([0.03, 0.03], 10),
    'of socket_timeout': ([60], 0.03),
    'of both': ([0.03, 60], 0.03),
}


@pytest.mark.parametrize('case', TIMERS)
@on_loops_at_once
async def test_a_cancellation_in_the_tick_of_a_timeout_of_the_lookup_wins(silent_address, case):
    loop = asyncio.get_running_loop()
    nameservers, socket_timeout = TIMERS[case]
    options = {'get_dns_resolver': asking(*[(after, silent_address) for after in nameservers]),
               'socket_timeout': socket_timeout}

    def cancel_and_block(task, seconds):
        loop.call_later(seconds, task.cancel)
        time.sleep(0.09)

    for name, seconds in SAME_TICK.items():
        with row(name):
            async with pool(**options) as request:
                task = loop.create_task(request(b'GET', 'http://name.test/'))
                # In one turn of the loop the lookup begins, and then nothing goes on.
                loop.call_soon(cancel_and_block, task, seconds)
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert task.cancelling() == 1
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(seconds):
                        loop.call_soon(time.sleep, 0.09)
                        await request(b'GET', 'http://name.test/')
                assert asyncio.current_task().cancelling() == 0


@on_loops
async def test_socket_timeout_in_the_tick_of_the_resolvers_timeout_ends_the_lookup(
        silent_address):
    nameservers = [(0.005, silent_address), (60, silent_address)]
    options = {'get_dns_resolver': asking(*nameservers), 'socket_timeout': 0.005}
    async with pool(**options) as request:
        asyncio.get_running_loop().call_soon(time.sleep, 0.015)
        error = await failed(request(b'GET', 'http://name.test/'), HttpDnsError, TimeoutError)
    assert 'socket_timeout, 0.005 seconds, passed' in str(error)


@on_loops
async def test_a_lookup_can_be_cancelled(nameserver, silent_address):
    options = {'get_dns_resolver': asking((60, silent_address))}
    async with pool(**options) as request:
        task = asyncio.create_task(request(b'GET', 'http://name.test/'))
        await turns(5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@on_loops
async def test_a_request_closed_in_its_lookup_lets_the_resolver_clean_up():
    ends = []

    async def resolve(host):
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            ends.append(host)
            raise

    async with pool(get_dns_resolver=resolving(resolve)) as request:
        coroutine = request(b'GET', 'http://name.test/')
        coroutine.send(None)
        coroutine.close()
        assert ends == ['name.test']


@on_loops
async def test_a_request_closed_in_a_callback_lets_the_resolver_clean_up():
    """Where no task is the current one."""
    ends = []

    async def resolve(host):
        try:
            await forever()
        except asyncio.CancelledError:
            ends.append((host, asyncio.current_task() is None))
            raise

    async with pool(get_dns_resolver=resolving(resolve)) as request:
        coroutine = request(b'GET', 'http://name.test/')
        coroutine.send(None)
        asyncio.get_running_loop().call_soon(coroutine.close)
        await until(lambda: ends)
        assert ends == [('name.test', False)]


@on_loops
async def test_a_request_closed_after_a_time_out_of_the_resolver_leaves_no_cancellation(
        nameserver, silent_address):
    """A task steps the request, and lives on."""
    options = {'get_dns_resolver': asking((0.01, silent_address), (20, nameserver.address))}
    nameserver.answers['name.test'] = None
    async with pool(**options) as request:
        coroutine = request(b'GET', 'http://name.test/')
        await run_until(coroutine, lambda: nameserver.queries['name.test'])
        coroutine.close()
        assert cancelling() == 0


ENDS_OF_A_LOOKUP = {
    'is cancelled': ('a.test', 10, asyncio.CancelledError),
    'times out': ('b.test', 0.05, HttpDnsError),
}


@on_loops
async def test_a_lookup_shared_with_one_that_ends_early_goes_on(nameserver):
    """The resolver makes one query for both, in the task of the first."""
    shared = []

    def get_dns_resolver(**kwargs):
        if not shared:
            shared.append(asking((PATIENCE, nameserver.address))(**kwargs))
        return shared[0]

    for case, (name, socket_timeout, kind) in ENDS_OF_A_LOOKUP.items():
        nameserver.answers[name] = ['127.0.0.1']
        nameserver.gates[name] = threading.Event()
        with row(case):
            async with (Server(Answering(OK)) as server,
                        pool(get_dns_resolver=get_dns_resolver,
                             socket_timeout=socket_timeout) as request,
                        pool(get_dns_resolver=get_dns_resolver) as other_request):
                url = f'http://{name}:{server.port}/'
                first = asyncio.create_task(get(request, url))
                await turns(2)
                second = asyncio.create_task(get(other_request, url))
                await until(lambda: nameserver.queries[name])  # noqa: B023
                if kind is asyncio.CancelledError:
                    first.cancel()
                with pytest.raises(kind):
                    await first
                await until(lambda: nameserver.queries[name] == 2)  # noqa: B023
                nameserver.gates[name].set()
                assert (await second)[2] == b'ok'
                assert second.cancelling() == 0


@on_loops
async def test_lookups_of_one_name_at_once_time_out_together(silent_address):
    options = {'get_dns_resolver': asking((0.03, silent_address))}
    async with pool(**options) as request:
        tasks = [asyncio.create_task(request(b'GET', 'http://name.test/')) for _ in range(3)]
        errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(error) for error in errors] == [HttpDnsError] * 3
    assert [type(error.__cause__) for error in errors] == [TimeoutError] * 3
    assert [task.cancelling() for task in tasks] == [0, 0, 0]


@on_loops
async def test_an_error_that_requests_share_tells_of_each_only_its_own_frames():
    async def resolve(host):
        await turns(2)
        raise LookupError(host)

    async def lines_of_error(request):
        with pytest.raises(HttpDnsError) as raised:
            await request(b'GET', 'http://name.test/')
        text = ''.join(traceback.format_exception(raised.value))
        assert 'in resolve\n' in text
        return len(text.splitlines())

    async with pool(get_dns_resolver=resolving(resolve)) as request:
        lines = await asyncio.gather(*(lines_of_error(request) for _ in range(20)))
    assert len(set(lines[1:])) == 1


@on_loops
async def test_the_work_for_an_address_does_not_grow_with_their_number():
    class Counted(IPv4Address):
        looked_at = 0

        def __hash__(self):
            Counted.looked_at += 1
            return super().__hash__()

    async def resolve(host):
        return [Counted('127.1.0.0') + number for number in range(200)]

    async with pool(get_dns_resolver=resolving(resolve)) as request:
        await failed(request(b'GET', 'http://name.test:1/'), HttpConnectionError, ExceptionGroup)
    assert 200 <= Counted.looked_at < 2000


@types.coroutine
def bare_yield():
    yield


async def resolve_to_nothing(host):
    return ()


async def resolve_to_none(host):
    return None


async def resolve_to_text(host):
    return ('127.0.0.1',)


async def resolve_by_raising(host):
    raise LookupError(f'no {host} here')


NAME_FAILED = 'GET http://name.test:80: resolving name.test failed: '

BAD_RESOLVERS = {
    'it returns no address': (
        resolving(resolve_to_nothing, resolve_to_nothing), LookupError,
        'LookupError: the resolver returned no address'),
    'it returns None': (resolving(resolve_to_none), TypeError, None),
    'it returns text': (
        resolving(resolve_to_text), TypeError,
        'TypeError: the resolver must return IPv4Address and IPv6Address objects, got str'),
    'it raises': (
        resolving(resolve_by_raising), LookupError, 'LookupError: no name.test here'),
    'it is not async': (
        lambda get_logger_adapter: (lambda *args, **kwargs: (), None), TypeError, None),
    'it can not be made': (lambda **kwargs: 1 // 0, ZeroDivisionError, None),
}


@on_loops
async def test_a_resolver_that_does_not_work_is_an_error():
    for case, (get_dns_resolver, cause, text) in BAD_RESOLVERS.items():
        with row(case):
            request, close = Pool(get_dns_resolver=get_dns_resolver)
            await failed(request(b'GET', 'http://name.test/'), HttpDnsError, cause,
                         text and NAME_FAILED + text)


async def resolve_by_turning(host):
    while True:
        await bare_yield()


async def resolve_after_turning(host):
    for _ in range(3):
        await bare_yield()
    return (ipaddress.IPv4Address('127.0.0.1'),)


async def resolve_in_spite_of_a_cancellation(host):
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        await asyncio.sleep(3600)


async def resolve_after_the_timeout_of_a_part(host):
    try:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(3600)
    except TimeoutError:
        await asyncio.sleep(0)
        return (ipaddress.IPv4Address('127.0.0.1'),)


async def resolve_after_the_cancellation_of_a_part(host):
    loop = asyncio.get_running_loop()
    part = loop.create_future()
    loop.call_later(0.01, part.cancel)
    try:
        await part
    except asyncio.CancelledError:
        await asyncio.sleep(0)
        return (ipaddress.IPv4Address('127.0.0.1'),)


async def resolve_after_the_failure_of_a_part(host):
    loop = asyncio.get_running_loop()
    part = loop.create_future()
    loop.call_soon(part.set_exception, OSError('no answer'))
    try:
        await part
    except OSError:
        await asyncio.sleep(0)
        return (ipaddress.IPv4Address('127.0.0.1'),)


async def resolve_in_a_task(host):
    await asyncio.create_task(asyncio.sleep(0.001))
    return (ipaddress.IPv4Address('127.0.0.1'),)


@pytest.mark.parametrize('resolve', [resolve_by_turning, resolve_in_spite_of_a_cancellation])
@on_loops
async def test_a_resolver_that_does_not_end_is_stopped(resolve):
    async with pool(get_dns_resolver=resolving(resolve), socket_timeout=0.03) as request:
        await failed(
            request(b'GET', 'http://name.test/'), HttpDnsError, TimeoutError,
            NAME_FAILED + 'TimeoutError: socket_timeout, 0.03 seconds, passed')


@on_loops
async def test_a_resolver_that_never_waits_can_be_cancelled():
    async with pool(get_dns_resolver=resolving(resolve_by_turning)) as request:
        task = asyncio.create_task(request(b'GET', 'http://name.test/'))
        await turns(3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@on_loops
async def test_a_lookup_is_asked_anew_when_the_request_that_began_it_is_closed():
    """By hand, and while the resolver would go on."""
    async def resolve(host):
        asked.append(host)
        if len(asked) == 1:
            with contextlib.suppress(asyncio.CancelledError):
                await forever()
            await forever()
        return [IPv4Address('127.0.0.1')]

    asked = []
    async with (Server(Answering(OK)) as server,
                pool(get_dns_resolver=resolving(resolve)) as request):
        url = f'http://name.test:{server.port}/'
        first = request(b'GET', url)
        first.send(None)
        second = asyncio.create_task(get(request, url))
        await turns(5)
        first.close()
        assert (await second)[2] == b'ok'
    assert asked == ['name.test'] * 2


WAYS_TO_RESOLVE = [
    resolve_after_turning, resolve_after_the_timeout_of_a_part,
    resolve_after_the_cancellation_of_a_part, resolve_after_the_failure_of_a_part,
    resolve_in_a_task]


@pytest.mark.parametrize('cancelled', [0, 1], ids=['never cancelled', 'cancelled before'])
@on_loops
async def test_a_resolver_may_wait_in_whatever_way(cancelled):
    async def request_after_cancellations(request, url):
        for _ in range(cancelled):
            asyncio.current_task().cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
        code, _, body = await get(request, url)
        return code, body, asyncio.current_task().cancelling()

    async with Server(Answering(OK)) as server:
        for resolve in WAYS_TO_RESOLVE:
            with row(resolve.__name__):
                async with pool(get_dns_resolver=resolving(resolve)) as request:
                    url = f'http://a.test:{server.port}/'
                    task = asyncio.create_task(request_after_cancellations(request, url))
                    assert await task == (b'200', b'ok', cancelled)


@on_loops
async def test_a_resolver_may_clean_up_when_it_is_cancelled():
    cleaned = []

    async def resolve(host):
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.001)
            cleaned.append(host)

    async with pool(get_dns_resolver=resolving(resolve)) as request:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await request(b'GET', 'http://name.test/')
        assert asyncio.current_task().cancelling() == 0
    assert cleaned == ['name.test']


@on_loops
async def test_a_cancellation_is_still_counted_when_the_resolver_cleaned_up():
    """`cancelling()` tells callers that the cancellation is meant for them."""
    async def resolve(host):
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)

    async with pool(get_dns_resolver=resolving(resolve)) as request:
        task = asyncio.create_task(request(b'GET', 'http://name.test/'))
        await turns(3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelling() == 1


@on_loops
async def test_the_resolver_sees_a_task_with_the_name_of_the_callers():
    """Loggers show it."""
    async def resolve(host):
        names.append(asyncio.current_task().get_name())
        return [IPv4Address('127.0.0.1')]

    names = []
    async with (Server(Answering(OK)) as server,
                pool(get_dns_resolver=resolving(resolve)) as request):
        url = f'http://name.test:{server.port}/'
        await asyncio.create_task(get(request, url), name='the name')
    assert names == ['the name']


@on_loops
async def test_what_a_resolver_cancels_after_its_end_is_not_the_task_of_the_request():
    """As by a timer that it has left."""
    async def resolve(host):
        tasks.append(asyncio.current_task())
        return [IPv4Address('127.0.0.1')]

    tasks = []
    async with (Server(Answering(OK)) as server,
                pool(get_dns_resolver=resolving(resolve)) as request):
        assert (await get(request, f'http://name.test:{server.port}/'))[2] == b'ok'
        [task] = tasks
        assert not task.cancel()
        await turns(2)
        assert cancelling() == 0


@on_loops
async def test_a_resolver_that_cancels_itself_is_cancelled_where_it_waits_next():
    async def resolve(host):
        asyncio.current_task().cancel('why')
        try:
            await forever()
        except asyncio.CancelledError as error:
            caught.append(error.args)
        return [IPv4Address('127.0.0.1')]

    caught = []
    async with (Server(Answering(OK)) as server,
                pool(get_dns_resolver=resolving(resolve)) as request):
        assert (await get(request, f'http://name.test:{server.port}/'))[2] == b'ok'
    assert caught == [('why',)]
    assert cancelling() == 0


@on_loops
async def test_a_cancellation_that_the_resolver_swallows_is_not_lost():
    async def resolve(host):
        with contextlib.suppress(asyncio.CancelledError):
            await forever()
        return [IPv4Address('127.0.0.1')]

    async with pool(get_dns_resolver=resolving(resolve)) as request:
        task = asyncio.create_task(request(b'GET', 'http://name.test/'))
        await turns(3)
        task.cancel('why')
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert caught.value.args == ('why',)
        assert task.cancelling() == 1


@on_loops
async def test_closing_the_pool_clears_the_cache_of_the_resolver(nameserver):
    cleared = []

    def get_dns_resolver(**kwargs):
        resolve, clear_cache = asking((5, nameserver.address))(**kwargs)

        async def clear_and_tell(**kwargs):
            cleared.append(True)
            await clear_cache(**kwargs)

        return resolve, clear_and_tell

    request, close = Pool(get_dns_resolver=get_dns_resolver)
    async with Server(Answering(OK)) as server:
        await get(request, f'http://name.test:{server.port}/')
        await close()
    assert cleared == [True]


# How lookups end that are of two questions, or that clean up


@on_loops
async def test_a_request_closed_while_it_asks_two_questions_lets_the_resolver_clean_up_both():
    asked, ended = [], []

    async def wait(host):
        asked.append(host)
        try:
            await forever()
        finally:
            ended.append(host)

    async with pool(get_dns_resolver=resolving(wait, wait)) as request:
        await run_until(coroutine := request(b'GET', 'http://name.test/'), lambda: len(asked) == 2)
        assert ended == []
        coroutine.close()
        assert ended == ['name.test'] * 2


@on_loops
async def test_a_resolver_that_insists_may_clean_up_after_socket_timeout():
    cleaned = []

    async def resolve(host):
        try:
            await forever()
        finally:
            while not cleaned:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0.01)
                    cleaned.append(host)

    options = {'get_dns_resolver': resolving(resolve), 'socket_timeout': 0.01}
    async with pool(**options) as request:
        await failed(
            request(b'GET', 'http://name.test/'), HttpDnsError, TimeoutError,
            'GET http://name.test:80: resolving name.test failed: TimeoutError: socket_timeout, '
            '0.01 seconds, passed')
    assert cleaned == ['name.test']


@on_clock
async def test_of_answers_that_are_over_at_the_same_time_one_replaces_the_resolver():
    made = []

    def get_dns_resolver(get_logger_adapter):
        async def resolve(host, kind, get_logger_adapter):
            await turns(3)
            seconds = -1 if number == 0 else 60
            return [aiodnsresolver.IPv4AddressExpiresAt(
                '127.0.0.1', expires_at=asyncio.get_running_loop().time() + seconds)]

        async def clear_cache(get_logger_adapter):
            pass

        number = len(made)
        made.append(number)
        return resolve, clear_cache

    async with (Server(Answering(OK)) as server,
                pool(get_dns_resolver=get_dns_resolver) as request):
        async with asyncio.TaskGroup() as group:
            for name in ('a.test', 'b.test', 'c.test'):
                group.create_task(get(request, f'http://{name}:{server.port}/'))
    assert made == [0, 1]


@on_clock
async def test_socket_timeout_also_ends_a_lookup_beside_stale_addresses(nameserver):
    silent = []

    async def resolve(host):
        if silent:
            await forever()
        return [aiodnsresolver.IPv4AddressExpiresAt(
            '127.0.0.1', expires_at=asyncio.get_running_loop().time() + 5)]

    options = {'get_dns_resolver': resolving(resolve), 'socket_timeout': 0.5}
    async with Server(Answering(OK)) as server, pool(**options) as request:
        await get(request, server.url.replace('127.0.0.1', 'name.test'))
        silent.append(True)
        await passing(6)
        seconds, task = await measured(get(request, server.url.replace('127.0.0.1', 'name.test')))
        assert (await task)[2] == b'ok'
        assert seconds == 0.5


@on_clock
async def test_a_slow_reply_to_a_gives_aaaa_no_more_than_the_time_of_one_attempt():
    """AAAA is asked for beside it, and wanted for the idle connection, but never answered."""
    has_moved = []

    async def resolve(host):
        if not has_moved:
            raise aiodnsresolver.DnsNoMatchingAnswers()
        await asyncio.sleep(0.3)
        return [IPv4Address('127.0.0.1')]

    async def resolve_ipv6(host):
        if has_moved:
            await forever()
        return [ipaddress.IPv6Address('::1')]

    options = {'get_dns_resolver': resolving(resolve, resolve_ipv6)}
    async with ServerAtEach('127.0.0.1', '::1') as servers, pool(**options) as request:
        url = f'http://name.test:{servers.port}/'
        await get(request, url)
        has_moved.append(True)
        seconds, task = await measured(get(request, url))
        assert (await task)[2] == b'ok'
        assert servers.used == ['::1', '127.0.0.1']
        assert seconds == pytest.approx(0.3 + 0.25)


# The files and the nameservers of the machine


@contextlib.contextmanager
def without_privileges():
    """Nobody may read what only its owner may read."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield


@on_loops
async def test_a_hosts_file_that_may_not_be_read_is_not_used(nameserver, caplog):
    with tempfile.TemporaryDirectory() as directory:
        hosts, resolv_conf = (pathlib.Path(directory) / name for name in ('hosts', 'resolv.conf'))
        hosts.write_text('127.0.0.9 name.test\n')
        resolv_conf.write_text('nameserver 127.0.0.1\n')
        pathlib.Path(directory).chmod(0o755)
        resolv_conf.chmod(0o644)
        hosts.chmod(0o600 if os.geteuid() == 0 else 0)
        get_dns_resolver = functools.partial(
            get_dns_resolver_default, hosts=str(hosts), resolv_conf=str(resolv_conf),
            port=nameserver.address[1])
        async with (Server(Answering(OK)) as server,
                    pool(get_dns_resolver=get_dns_resolver) as request):
            with without_privileges():
                await get(request, f'http://name.test:{server.port}/')
    assert nameserver.queries == {'name.test': 1}
    text = caplog.records[-1].getMessage()
    assert f"{hosts} is not used: [Errno 13] Permission denied: '{hosts}'" in text


@on_loops
async def test_a_nameserver_that_can_not_be_reached_is_told(tmp_path):
    (tmp_path / 'resolv.conf').write_text('nameserver 255.255.255.255\n')
    get_dns_resolver = functools.partial(
        get_dns_resolver_default, hosts=str(tmp_path / 'none'),
        resolv_conf=str(tmp_path / 'resolv.conf'))
    async with pool(get_dns_resolver=get_dns_resolver) as request:
        error = await failed(
            request(b'GET', 'http://name.test/'), HttpDnsError, aiodnsresolver.DnsSocketError)
    tries = ', '.join(['255.255.255.255, which can not be reached'] * 4)
    assert str(error) == (
        'GET http://name.test:80: resolving name.test failed: no answer from nameserver '
        f'{tries} (DnsSocketError)')


@on_loops
async def test_what_fails_in_a_lookup_is_logged_for_information(nameserver, tmp_path, caplog):
    """Warnings are for what the program has to do with."""
    nameserver.answers['broken.test'] = 'SERVFAIL'
    (tmp_path / 'resolv.conf').write_text('nameserver 127.0.0.1\n')
    get_dns_resolver = functools.partial(
        get_dns_resolver_default, hosts=str(tmp_path / 'none'),
        resolv_conf=str(tmp_path / 'resolv.conf'), port=nameserver.address[1])
    caplog.set_level(logging.INFO)
    async with pool(get_dns_resolver=get_dns_resolver) as request:
        await failed(request(b'GET', 'http://broken.test/'), HttpDnsError,
                     aiodnsresolver.DnsResponseCode)
    failures = [record for record in caplog.records if 'Nameserver failed' in record.getMessage()]
    assert {record.levelname for record in failures} == {'INFO'}


@on_loops
async def test_a_nameserver_for_which_there_is_no_socket_is_told(nameserver, tmp_path):
    """As one of IPv6 on a machine without that: those of IPv4 are asked after it."""
    (tmp_path / 'resolv.conf').write_text('nameserver 127.0.0.1\n')
    get_dns_resolver = functools.partial(
        get_dns_resolver_default, hosts=str(tmp_path / 'none'),
        resolv_conf=str(tmp_path / 'resolv.conf'), port=nameserver.address[1])
    async with (Server(Answering(OK)) as server,
                pool(get_dns_resolver=get_dns_resolver) as request):
        await get(request, f'http://name.test:{server.port}/')
        with no_descriptor_left():
            error = await failed(
                request(b'GET', 'http://other.test/'), HttpDnsError,
                aiodnsresolver.DnsSocketError)
    why = ('127.0.0.1: OSError: [Errno 24] Too many open files (max_connections bounds the '
           'descriptors of a pool)')
    assert str(error) == (
        'GET http://other.test:80: resolving other.test failed: no answer from nameserver '
        f'{why}, {why} (DnsSocketError)')
