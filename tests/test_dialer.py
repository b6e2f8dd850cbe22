"""`Dialer`: connecting and looking up names as a pool does, without one."""

import asyncio
import contextlib
import ipaddress
import socket

import pytest

from lowhaio import Dialer, HttpConnectionError, HttpDnsError, Pool
from tests.harness import (
    REFUSED,
    StandingClock,
    Unwanted,
    bound_to,
    failed,
    full_backlog,
    no_address,
    on_clock,
    on_loops,
    passing,
    resolving,
    settling,
    unwanted,
)


@contextlib.asynccontextmanager
async def dialing(**options):
    connect, look_up, close = Dialer(**options)
    try:
        yield connect, look_up
    finally:
        await close()


def addresses(*texts):
    async def resolve(host):
        asked.append(host)
        return [ipaddress.ip_address(text) for text in texts]

    asked = []
    return resolving(resolve), asked


@on_loops
async def test_it_connects_to_a_name_or_an_address():
    resolver, asked = addresses('127.0.0.1')
    for host, address in ('name.test', '127.0.0.1'), ('127.0.0.1', '127.0.0.1'), ('::1', '::1'):
        with socket.create_server((address, 0), family=(
                socket.AF_INET6 if ':' in address else socket.AF_INET)) as listening:
            listening.setblocking(False)
            async with dialing(get_dns_resolver=resolver) as (connect, _):
                with await connect(host, listening.getsockname()[1]) as sock:
                    accepted, peer = listening.accept()
                    accepted.close()
                    assert peer == sock.getsockname()
                    assert sock.gettimeout() == 0
                    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                    # Nothing of the loop is left: the caller registers its own.
                    assert not asyncio.get_running_loop().remove_reader(sock.fileno())
                    assert not asyncio.get_running_loop().remove_writer(sock.fileno())
    assert asked == ['name.test']


@on_clock
async def test_it_goes_to_the_next_address_while_one_does_not_answer():
    resolver, _ = addresses('127.0.0.1', '127.0.0.2')
    silent, good = bound_to('127.0.0.1', '127.0.0.2')
    with silent, good, full_backlog(silent):
        good.listen()
        async with dialing(get_dns_resolver=resolver) as (connect, _):
            task = asyncio.ensure_future(connect('name.test', good.getsockname()[1]))
            await passing(0.2)
            assert not task.done()
            await passing(0.1)
            with await task as sock:
                assert sock.getpeername()[0] == '127.0.0.2'
    # No timer of it is left, and nothing that has been given up.
    loop = asyncio.get_running_loop()
    assert isinstance(loop, StandingClock)
    await settling()


@on_loops
async def test_its_errors_are_those_of_a_pool():
    [sock] = bound_to('127.0.0.1')
    port = sock.getsockname()[1]
    with sock:
        resolver, _ = addresses('127.0.0.1')
        async with dialing(get_dns_resolver=resolver) as (connect, look_up):
            await failed(
                connect('name.test', port), HttpConnectionError, ConnectionRefusedError,
                f'CONNECT tcp://name.test:{port}: connecting failed: 127.0.0.1: {REFUSED}')
    async with dialing(get_dns_resolver=resolving(no_address)) as (connect, look_up):
        for awaitable, name in (connect('nx.test', 1), 'tcp://nx.test:1'), (
                look_up('nx.test'), 'nx.test'):
            error = await failed(awaitable, HttpDnsError, None)
            assert str(error).startswith(f'CONNECT {name}: resolving nx.test failed: ')

    def failing(family):
        raise Unwanted('why')

    async with dialing(get_sock=failing) as (connect, _):
        await failed(connect('::1', 1), HttpConnectionError, Unwanted,
                     'CONNECT tcp://[::1]:1: connecting failed: ::1: Unwanted: why')


@on_loops
async def test_it_tells_the_addresses_in_turn():
    resolver, asked = addresses('192.0.2.1', '192.0.2.2')
    async with dialing(get_dns_resolver=resolver, min_ttl=9) as (_, look_up):
        shown = [list(map(str, await look_up('name.test'))) for _ in range(3)]
        assert shown == [['192.0.2.1', '192.0.2.2'], ['192.0.2.2', '192.0.2.1'],
                         ['192.0.2.1', '192.0.2.2']]
        assert set(asked) == {'name.test'}
        assert await look_up('fe80::1%lo') == (ipaddress.ip_address('fe80::1%lo'),)


@on_clock
async def test_it_ends_with_the_time_to_connect_of_the_request_that_it_serves():
    resolver, _ = addresses('127.0.0.1')
    [silent] = bound_to('127.0.0.1')
    with silent, full_backlog(silent):
        async with dialing(get_dns_resolver=resolver) as (connect, _):
            async def get_connection(scheme, host, port):
                return await connect('proxy.test', silent.getsockname()[1])

            request, close = Pool(get_connection=get_connection)
            task = asyncio.ensure_future(request(b'GET', 'http://a.test/'))
            await passing(9.9)
            assert not task.done()
            await passing(0.2)
            await failed(task, HttpConnectionError, TimeoutError, 'GET http://a.test:80: '
                         'get_connection failed: TimeoutError: socket_timeout, 10 seconds, passed')
            task = asyncio.ensure_future(connect('proxy.test', silent.getsockname()[1]))
            await passing(100)
            task.cancel('why')
            with pytest.raises(asyncio.CancelledError, match='^why$'):
                await task
            await close()


def test_it_is_of_one_loop_and_checks_its_options():
    connect, look_up, close = Dialer(get_dns_resolver=unwanted)
    assert asyncio.run(look_up('::1')) == (ipaddress.ip_address('::1'),)
    with pytest.raises(RuntimeError, match='bound to the event loop of its first request'):
        asyncio.run(connect('::1', 1))
    asyncio.run(close())
    # It is not the port that a URL has if it names none.
    for port in 0, 65536:
        with pytest.raises(ValueError, match=f"a port from 1 to 65535, got '{port}'$"):
            asyncio.run(Dialer()[0]('127.0.0.1', port))
    with pytest.raises(ValueError, match='^min_ttl must be a number of seconds, got -1$'):
        Dialer(min_ttl=-1)
