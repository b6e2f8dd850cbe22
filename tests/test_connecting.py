"""Connections are opened to one of the addresses of a host, or fail with a reason."""

import asyncio
import contextlib
import errno
import ipaddress
import random
import socket

import pytest

from lowhaio import HttpConnectionError, HttpDataError, buffered
from tests.harness import (
    OK,
    REFUSED,
    SCHEMES,
    Answering,
    Server,
    ServerAt,
    always,
    bound_to,
    bound_to_each,
    certified,
    failed,
    full_backlog,
    get,
    local_address,
    measured,
    on_clock,
    on_loops,
    on_loops_at_once,
    pool,
    resolving,
    row,
    trusting,
    turns,
)


@on_loops
async def test_new_connections_take_turns_between_the_addresses():
    addresses = ['127.0.0.1', '127.0.0.2', '127.0.0.3']
    used = []

    async def script(peer):
        used.append(local_address(peer))
        await Answering(OK)(peer)

    async def resolve(host):
        # In whatever order they come: some resolvers rotate them too.
        random.shuffle(addresses)
        return [ipaddress.ip_address(address) for address in addresses]

    options = {'get_dns_resolver': resolving(resolve), 'keep_alive_timeout': 0}
    async with contextlib.AsyncExitStack() as stack:
        for sock in bound_to(*addresses):
            server = await stack.enter_async_context(ServerAt(sock, script))
        request = await stack.enter_async_context(pool(**options))
        for _ in range(6):
            await get(request, f'http://a.test:{server.port}/')
    assert sorted(used[:3]) == ['127.0.0.1', '127.0.0.2', '127.0.0.3']
    assert used[3:] == used[:3]


@on_loops
async def test_reused_connections_do_not_take_the_turn_of_an_address():
    used = []
    closing = b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok'

    async def script(peer):
        used.append(local_address(peer))
        await Answering(OK, OK, closing)(peer)

    socks = bound_to('127.0.0.1', '127.0.0.2')
    async with (ServerAt(socks[0], script) as server, ServerAt(socks[1], script),
                pool(get_dns_resolver=always('127.0.0.1', '127.0.0.2')) as request):
        for _ in range(12):
            await get(request, f'http://a.test:{server.port}/')
    assert used == ['127.0.0.1', '127.0.0.2'] * 2


@on_loops
async def test_an_address_that_refuses_is_followed_by_the_next():
    refusing, serving = bound_to('127.0.0.1', '127.0.0.2')
    async with ServerAt(serving, Answering(OK)) as server:
        async with pool(get_dns_resolver=always('127.0.0.1', '127.0.0.2')) as request:
            code, _, body = await request(b'GET', f'http://a.test:{server.port}/')
            assert (code, await buffered(body)) == (b'200', b'ok')
    refusing.close()


@on_loops
async def test_a_single_address_that_refuses_is_the_cause():
    [refusing] = bound_to('127.0.0.1')
    port = refusing.getsockname()[1]
    async with pool() as request:
        error = await failed(
            request(b'GET', f'http://127.0.0.1:{port}/path?query'),
            HttpConnectionError, ConnectionRefusedError,
            f'GET http://127.0.0.1:{port}: connecting failed: 127.0.0.1: {REFUSED}')
        assert (error.reused, error.response_started) == (False, False)
    refusing.close()


@on_loops
async def test_all_addresses_that_refuse_are_in_the_error_in_turn():
    socks = bound_to('127.0.0.1', '127.0.0.2', '127.0.0.3')
    port = socks[0].getsockname()[1]
    options = {'get_dns_resolver': always('127.0.0.3', '127.0.0.1', '127.0.0.2')}
    async with pool(**options) as request:
        for one, two, three in ((3, 1, 2), (1, 2, 3), (2, 3, 1)):
            error = await failed(
                request(b'POST', f'https://a.test:{port}/'), HttpConnectionError, ExceptionGroup,
                f'POST https://a.test:{port}: connecting failed: 127.0.0.{one}: {REFUSED}; '
                f'127.0.0.{two}: {REFUSED}; 127.0.0.{three}: {REFUSED}')
            causes = error.__cause__.exceptions
            assert [type(cause) for cause in causes] == [ConnectionRefusedError] * 3
    for sock in socks:
        sock.close()


@on_loops
async def test_connecting_ends_after_socket_timeout():
    [sock] = bound_to('127.0.0.1')
    with sock, full_backlog(sock) as port:
        async with pool(socket_timeout=0.05) as request:
            error = await failed(
                request(b'GET', f'http://127.0.0.1:{port}/'), HttpConnectionError, TimeoutError,
                f'GET http://127.0.0.1:{port}: connecting failed: 127.0.0.1: TimeoutError: '
                'socket_timeout, 0.05 seconds, passed')
            assert (error.reused, error.response_started) == (False, False)


@on_loops
async def test_socket_timeout_is_for_all_addresses_together():
    silent, serving = bound_to('127.0.0.1', '127.0.0.2')
    options = {'get_dns_resolver': always('127.0.0.1', '127.0.0.2'), 'socket_timeout': 0.05}
    async with ServerAt(serving, Answering(OK)) as server:
        with silent, full_backlog(silent) as port:
            async with pool(**options) as request:
                error = await failed(
                    request(b'GET', f'http://a.test:{port}/'), HttpConnectionError, TimeoutError)
    assert str(error).startswith(
        f'GET http://a.test:{port}: connecting failed: 127.0.0.1: TimeoutError: socket_timeout')
    assert server.peers == []


@on_clock
async def test_socket_timeout_is_for_the_lookup_and_connecting_together():
    """A lookup that took most of it leaves only the rest."""
    async def resolve(host):
        await asyncio.sleep(4)
        return (ipaddress.IPv4Address('127.0.0.1'),)

    [silent] = bound_to('127.0.0.1')
    with silent, full_backlog(silent) as port:
        async with pool(get_dns_resolver=resolving(resolve), socket_timeout=5) as request:
            seconds, task = await measured(request(b'GET', f'http://a.test:{port}/'))
            await failed(task, HttpConnectionError, TimeoutError)
    assert seconds == 5


@on_loops_at_once
async def test_an_address_may_refuse_later():
    """Linux repeats an attempt that was not answered after a second."""
    [silent] = bound_to('127.0.0.1')
    with full_backlog(silent) as port:
        async with pool() as request:
            task = asyncio.create_task(request(b'GET', f'http://127.0.0.1:{port}/'))
            await turns(5)
            silent.close()
            await failed(
                task, HttpConnectionError, ConnectionRefusedError,
                f'GET http://127.0.0.1:{port}: connecting failed: 127.0.0.1: '
                f'ConnectionRefusedError: [Errno {errno.ECONNREFUSED}] Connection refused')


@on_loops
async def test_connecting_can_be_cancelled():
    [silent] = bound_to('127.0.0.1')
    with silent, full_backlog(silent) as port:
        async with pool() as request:
            task = asyncio.create_task(request(b'GET', f'http://127.0.0.1:{port}/'))
            await turns(5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


@on_loops
async def test_get_sock_is_called_with_the_family_for_each_connection():
    families = []

    def get_sock(family):
        families.append(family)
        return socket.socket(family)  # blocking, and yet nothing blocks

    options = {'get_sock': get_sock, 'keep_alive_timeout': 0}
    async with Server(Answering(OK)) as server, pool(**options) as request:
        for _ in range(2):
            assert (await get(request, server.url))[2] == b'ok'
        with pytest.raises(HttpConnectionError):
            await get(request, 'http://[::1]:1/')
    assert families == [socket.AF_INET, socket.AF_INET, socket.AF_INET6]


def get_sock_raising(family):
    raise OSError(errno.EMFILE, 'too many')


def get_sock_closed(family):
    sock = socket.socket(family)
    sock.close()
    return sock


def get_sock_of_wrong_family(family):
    return socket.socket(socket.AF_UNIX)


BAD_SOCKS = {
    'it raises': (get_sock_raising, OSError),
    'its socket is closed': (get_sock_closed, None),
    'its socket is of another family': (get_sock_of_wrong_family, TypeError),
    'it returns nothing': (lambda family: None, TypeError),
}


@on_loops
async def test_a_get_sock_that_does_not_work_is_an_error():
    for case, (get_sock, cause) in BAD_SOCKS.items():
        with row(case):
            async with Server(Answering(OK)) as server, pool(get_sock=get_sock) as request:
                error = await failed(get(request, server.url), HttpConnectionError, cause)
                assert str(error).startswith(
                    f'GET {server.origin}: connecting failed: 127.0.0.1: ')
                assert server.peers == []


def ipv6_sock():
    try:
        sock = socket.socket(socket.AF_INET6)
        sock.bind(('::1', 0))
    except OSError:
        pytest.skip('this machine has no IPv6')
    return sock


IPV6_HOSTS = {
    'literal': '[::1]',
    'long literal': '[0:0:0:0:0:0:0:1]',
    'name of a zone': '[::1%25lo]',
    'number of a zone': '[::1%251]',
    'zone as others write it': '[::1%lo]',
}


@SCHEMES
@on_loops
async def test_an_ipv6_address_is_connected_to(scheme):
    context = certified('::1') if scheme == 'https' else None
    for case, literal in IPV6_HOSTS.items():
        answering = Answering(OK)
        with row(case):
            async with (ServerAt(ipv6_sock(), answering, context) as server,
                        pool(get_ssl_context=trusting) as request):
                url = f'{scheme}://{literal}:{server.port}/'
                for _ in range(2):
                    assert (await get(request, url))[2] == b'ok'
            # RFC 6874 4: a zone is for this machine only.
            assert answering.heads[0].endswith(b'host: [::1]:%d\r\n\r\n' % server.port)
            assert answering.connections == [0, 0]


@on_loops
async def test_the_peer_of_an_ipv6_connection_is_in_brackets_in_errors():
    async with (ServerAt(ipv6_sock(), Answering(b'bad\r\n\r\n')) as server, pool() as request):
        error = await failed(
            get(request, f'http://[::1%25lo]:{server.port}/'), HttpDataError, ValueError)
    origin = f'[::1%lo]:{server.port}'
    assert str(error).startswith(f'GET http://{origin} (peer {origin}), reading the response')


@on_loops
async def test_a_zone_that_does_not_exist_is_an_error():
    async with pool() as request:
        error = await failed(
            request(b'GET', 'http://[fe80::1%25nosuch]/'), HttpConnectionError, OSError)
    assert str(error).startswith(
        'GET http://[fe80::1%nosuch]:80: connecting failed: fe80::1%nosuch: OSError: ')


@on_loops
async def test_an_ipv6_address_of_a_custom_resolver_is_connected_to():
    refusing, sock = bound_to_each('127.0.0.1', '::1')
    with refusing:
        async with (ServerAt(sock, Answering(OK)) as server,
                    pool(get_dns_resolver=always('::1', '127.0.0.1')) as request):
            assert (await get(request, f'http://a.test:{server.port}/'))[2] == b'ok'
