"""`get_connection`: sockets that the caller makes."""

import asyncio
import contextlib
import os
import socket
import ssl

import pytest

from lowhaio import HttpConnectionError, HttpDataError, HttpError, HttpTlsError
from tests.harness import (
    OK,
    PATIENCE,
    SCHEMES,
    Answering,
    Server,
    Streams,
    Unwanted,
    cancelling,
    certified,
    context_of,
    failed,
    forever,
    get,
    measured,
    of_length,
    on_clock,
    on_loops,
    on_loops_at_once,
    pool,
    row,
    socket_to,
    trusting,
    turns,
    unix_streams,
    unwanted,
    yielding,
)


CANONICAL = {
    'http://NAME.Test': ('http', 'name.test', 80),
    'HTTPS://name.test.': ('https', 'name.test', 443),
    'http://name.test:8080/a?b': ('http', 'name.test', 8080),
    'https://name.test:/': ('https', 'name.test', 443),
    'http://M\u00fcnchen.example/': ('http', 'xn--mnchen-3ya.example', 80),
    'http://127.0.0.1/': ('http', '127.0.0.1', 80),
    'http://\uff11\uff12\uff17.0.0.1/': ('http', '127.0.0.1', 80),
    'http://[::1]:81/': ('http', '::1', 81),
    'https://[2001:DB8:0:0::1]/': ('https', '2001:db8::1', 443),
    'http://[FE80::1%25lo]/': ('http', 'fe80::1%lo', 80),
}


@on_loops
async def test_a_connection_over_tcp_that_was_got_sends_at_once():
    async def get_connection(scheme, host, port):
        socks.append(socket.create_connection(('127.0.0.1', port)))
        return socks[-1]

    socks = []
    async with Server(Answering(OK)) as server, pool(get_connection=get_connection) as request:
        await get(request, server.url)
        assert socks[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@on_loops
async def test_get_connection_is_called_with_the_canonical_origin_and_in_place_of_dns():
    async def get_connection(*args, **kwargs):
        calls.append((args, kwargs))
        raise Unwanted('why')

    calls = []
    options = {'get_dns_resolver': unwanted, 'get_sock': unwanted, 'get_ssl_context': unwanted}
    async with pool(get_connection=get_connection, **options) as request:
        for url, (scheme, host, port) in CANONICAL.items():
            with row(url):
                bracketed = f'[{host}]' if ':' in host else host
                await failed(
                    request(b'GET', url), HttpConnectionError, Unwanted,
                    f'GET {scheme}://{bracketed}:{port}: get_connection failed: Unwanted: why')
    assert calls == [(args, {}) for args in CANONICAL.values()]
    assert [list(map(type, args)) for args, _ in calls] == [[str, str, int]] * len(calls)


@contextlib.asynccontextmanager
async def tcp_streams(streams, tmp_path):
    async def get_connection(scheme, host, port):
        return await socket_to(socket.AF_INET, server.sockets[0].getsockname())

    server = await asyncio.start_server(streams, '127.0.0.1', 0, ssl=streams.context)
    address, port = server.sockets[0].getsockname()
    with contextlib.closing(server):
        yield get_connection, f' (peer {address}:{port})'


@contextlib.asynccontextmanager
async def ipv6_streams(streams, tmp_path):
    async def get_connection(scheme, host, port):
        return await socket_to(socket.AF_INET6, server.sockets[0].getsockname())

    server = await asyncio.start_server(streams, '::1', 0, ssl=streams.context)
    with contextlib.closing(server):
        yield get_connection, f' (peer [::1]:{server.sockets[0].getsockname()[1]})'


@contextlib.asynccontextmanager
async def pair_streams(streams, tmp_path):
    async def get_connection(scheme, host, port):
        ours, theirs = socket.socketpair()
        accepting.append(asyncio.ensure_future(streams.accept(theirs)))
        assert ours.getblocking()
        socks.append(ours)
        return ours

    accepting, socks = [], []
    yield get_connection, ''
    await asyncio.gather(*accepting)


@pytest.mark.parametrize('kind', [tcp_streams, ipv6_streams, unix_streams, pair_streams])
@SCHEMES
@on_loops
async def test_a_connection_that_was_got_is_used_like_any_other(scheme, kind, tmp_path):
    calls = []
    streams = Streams(context_of(scheme))
    async with kind(streams, tmp_path) as (get_connection, peer):
        async def counting(*args):
            calls.append(args[1])
            return await get_connection(*args)

        async with pool(get_connection=counting, get_ssl_context=trusting,
                        get_dns_resolver=unwanted, get_sock=unwanted) as request:
            # It is reused, by its origin only.
            for host in ('name.test', '127.0.0.1', 'Name.test'):
                assert (await get(request, f'{scheme}://{host}/'))[2] == b'ok'
            assert (calls, streams.connections) == (['name.test', '127.0.0.1'], [0, 1, 0])
            # And discarded when the peer hangs up.
            streams.writers[0].close()
            await streams.all_ended(but=1)
            assert (await get(request, f'{scheme}://name.test/'))[2] == b'ok'
            assert (calls[2:], streams.connections[3:]) == (['name.test'], [2])
            # An error tells where it leads to.
            error = await failed(
                request(b'PUT', f'{scheme}://name.test/', headers=of_length(1),
                        body=lambda: yielding(ValueError('why'))),
                HttpConnectionError, ValueError)
            port = 443 if scheme == 'https' else 80
            assert str(error) == (f'PUT {scheme}://name.test:{port}{peer}, '
                                  'the request body: why')
        await streams.all_ended()
    assert streams.heads[0] == b'GET / HTTP/1.1\r\nhost: name.test\r\n\r\n'


@on_loops
async def test_the_error_of_a_handshake_tells_where_the_connection_leads_to(tmp_path):
    streams = Streams(certified('other.test'))
    async with unix_streams(streams, tmp_path) as (get_connection, peer):
        async with pool(get_connection=get_connection, get_ssl_context=trusting) as request:
            error = await failed(
                request(b'GET', 'https://name.test/'), HttpTlsError,
                ssl.SSLCertVerificationError)
            assert str(error).startswith(
                f'GET https://name.test:443{peer}: the TLS handshake failed: ')
            assert "'name.test'" in str(error)
            await turns(5)


@on_loops
async def test_get_connection_that_fails_is_the_cause_and_gives_its_place_back():
    class Odd(Exception):
        def __str__(self):
            return ''

    async def get_connection(scheme, host, port):
        calls.append(host)
        await asyncio.sleep(0)
        if errors:
            raise errors.pop(0)
        return socks.pop()

    async def timing_out():
        async with asyncio.timeout(0.01):
            await forever()

    async def get_in_time(scheme, host, port):
        await timing_out()

    where = 'GET http://name.test:80: get_connection failed: '
    causes = {
        OSError(5, 'why'): 'OSError: [Errno 5] why',
        LookupError('why'): 'LookupError: why',
        Odd(): 'Odd',
        ValueError('why'): 'why',
        StopAsyncIteration(): 'StopAsyncIteration',
        TimeoutError(): 'TimeoutError',
        HttpDataError('of another pool'): 'HttpDataError: of another pool',
    }
    calls, errors, socks = [], list(causes), []
    streams = Streams()
    async with pool(get_connection=get_connection, max_connections=1,
                    pool_timeout=0) as request:
        for cause, text in causes.items():
            with row(text):
                error = await failed(
                    request(b'GET', 'http://name.test/'), HttpConnectionError, type(cause),
                    where + text)
                assert error.__cause__ is cause
        ours, theirs = socket.socketpair()
        socks.append(ours)
        await streams.accept(theirs)
        assert (await get(request, 'http://name.test/'))[2] == b'ok'
    await streams.all_ended()
    async with pool(get_connection=get_in_time) as request:
        await failed(request(b'GET', 'http://name.test/'), HttpConnectionError, TimeoutError,
                     where + 'TimeoutError')


def no_socket():
    return None


def no_socket_but_its_number():
    return 5


def tls_socket():
    ours, theirs = socket.socketpair()
    theirs.close()
    return trusting().wrap_socket(ours, server_hostname='a', do_handshake_on_connect=False)


def closed_socket():
    sock = socket.socket()
    sock.close()
    return sock


def detached_socket():
    sock = socket.socket()
    os.close(sock.detach())
    return sock


MUST = 'TypeError: it must return a connected socket.socket, without TLS, got '


@on_loops
async def test_get_connection_that_returns_no_usable_socket_is_an_error():
    async def get_connection(scheme, host, port):
        got.append(make())
        return got[-1]

    got = []
    async with pool(get_connection=get_connection) as request:
        for make, cause, text in (
                (no_socket, TypeError, MUST + 'NoneType'),
                (no_socket_but_its_number, TypeError, MUST + 'int'),
                (tls_socket, TypeError, None),
                (closed_socket, OSError, 'OSError: [Errno 9] Bad file descriptor'),
                (detached_socket, OSError, 'OSError: [Errno 9] Bad file descriptor'),
                (socket.socket, OSError,
                 'OSError: [Errno 107] Transport endpoint is not connected')):
            with row(make.__name__):
                await failed(request(b'GET', 'http://name.test/'), HttpConnectionError, cause,
                             text and f'GET http://name.test:80: get_connection failed: {text}')
                assert not isinstance(got[-1], socket.socket) or got[-1].fileno() == -1


@on_loops
async def test_get_connection_that_is_no_coroutine_function_is_an_error():
    async with pool(get_connection=lambda *args: None) as request:
        await failed(request(b'GET', 'http://name.test/'), HttpConnectionError, TypeError)


@on_loops_at_once
async def test_get_connection_that_hangs_is_cancelled_after_socket_timeout():
    async def hanging(scheme, host, port):
        try:
            await forever()
        except BaseException as error:
            events.append(type(error))
            raise
        finally:
            events.append(asyncio.current_task())

    async def going_on(scheme, host, port):
        ours, theirs = socket.socketpair()
        theirs.close()
        got.append(ours)
        with contextlib.suppress(asyncio.CancelledError):
            await forever()
        return ours

    async def raising(scheme, host, port):
        try:
            await forever()
        except asyncio.CancelledError:
            raise LookupError('why') from None

    events, got = [], []
    late = ('GET http://name.test:80: get_connection failed: '
            'TimeoutError: socket_timeout, 0.05 seconds, passed')
    for get_connection, cause, text in (
            (hanging, TimeoutError, late),
            (raising, LookupError,
             'GET http://name.test:80: get_connection failed: LookupError: why')):
        with row(get_connection.__name__):
            async with pool(get_connection=get_connection, socket_timeout=0.05,
                            max_connections=1) as request:
                for _ in range(2):  # its place is free again
                    await failed(request(b'GET', 'http://name.test/'), HttpConnectionError,
                                 cause, text)
                assert cancelling() == 0
                await turns(2)
    assert events == [asyncio.CancelledError, asyncio.current_task()] * 2
    # One that goes on all the same leaves nothing behind, whatever becomes of its socket.
    async with pool(get_connection=going_on, socket_timeout=0.05) as request:
        with pytest.raises(HttpError):
            await request(b'GET', 'http://name.test/')
        assert cancelling() == 0
        assert [sock.fileno() for sock in got] == [-1]


@on_loops
async def test_get_connection_that_hangs_may_wait_in_its_cleaning_up():
    async def get_connection(scheme, host, port):
        try:
            await forever()
        finally:
            await turns(3)
            ended.append(True)

    ended = []
    async with pool(get_connection=get_connection, socket_timeout=0.05) as request:
        await failed(
            request(b'GET', 'http://name.test/'), HttpConnectionError, TimeoutError,
            'GET http://name.test:80: get_connection failed: '
            'TimeoutError: socket_timeout, 0.05 seconds, passed')
        assert cancelling() == 0
    assert ended == [True]


@on_clock
async def test_socket_timeout_is_for_get_connection_and_the_handshake_together():
    async def get_connection(scheme, host, port):
        await asyncio.sleep(0.9)
        ours, theirs = socket.socketpair()
        silent.append(theirs)
        return ours

    silent = []
    async with pool(get_connection=get_connection, get_ssl_context=trusting,
                    socket_timeout=1) as request:
        seconds, task = await measured(request(b'GET', 'https://name.test/'))
        await failed(
            task, HttpTlsError, TimeoutError,
            'GET https://name.test:443: the TLS handshake failed: '
            'TimeoutError: socket_timeout, 1 seconds, passed')
    assert seconds == 1
    silent[0].close()


@on_loops
async def test_get_connection_may_have_time_outs_of_its_own():
    async def get_connection(scheme, host, port):
        for _ in range(2):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await forever()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(forever(), 0.01)
        ours, theirs = socket.socketpair()
        await streams.accept(theirs)
        return ours

    streams = Streams()
    async with pool(get_connection=get_connection) as request:
        async with asyncio.timeout(PATIENCE / 2):
            assert (await get(request, 'http://name.test/'))[2] == b'ok'
        assert cancelling() == 0
        await turns(2)
    await streams.all_ended()


@pytest.mark.parametrize('limit', ['cancel', 'asyncio.timeout'])
@on_loops
async def test_get_connection_is_cancelled_with_its_request(limit):
    async def get_connection(scheme, host, port):
        waits.set()
        try:
            await forever()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    async def limited():
        async with asyncio.timeout(None if limit == 'cancel' else 0.02):
            await request(b'GET', 'http://name.test/')

    waits, ended = asyncio.Event(), []
    async with pool(get_connection=get_connection) as request:
        task = asyncio.create_task(limited())
        await waits.wait()
        if limit == 'cancel':
            task.cancel()
        [error] = await asyncio.gather(task, return_exceptions=True)
        assert type(error) is (asyncio.CancelledError if limit == 'cancel' else TimeoutError)
        assert task.cancelling() == (limit == 'cancel')
        assert ended == [True]


@SCHEMES
@on_loops
async def test_get_connection_may_be_cancelled_at_any_turn_of_the_loop(scheme):
    """Also in the one in which it ends."""
    async def get_connection(scheme, host, port):
        sock = socket.socket()
        socks.append(sock)
        try:
            await asyncio.sleep(0)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ('127.0.0.1', server.port))
            await gate.wait()
        except BaseException:
            sock.close()
            raise
        return sock

    socks = []
    gate = asyncio.Event()
    async with Server(Answering(OK), context_of(scheme)) as server:
        for turn in range(30):
            async with pool(get_connection=get_connection, get_ssl_context=trusting,
                            max_connections=1) as request:
                gate.clear()
                task = asyncio.create_task(get(request, f'{scheme}://127.0.0.1/'))
                await turns(turn)
                gate.set()
                await turns(turn % 3)
                task.cancel()
                [result] = await asyncio.gather(task, return_exceptions=True)
                assert isinstance(result, asyncio.CancelledError) or result[2] == b'ok'
                assert (await get(request, f'{scheme}://127.0.0.1/'))[2] == b'ok'
            socks = [sock for sock in socks if sock.fileno() != -1]
            assert socks == [], turn


@on_loops
async def test_a_limit_of_connections_is_one_for_those_that_get_connection_makes():
    async def get_connection(scheme, host, port):
        opening.append(host)
        await turns(3)
        ours, theirs = socket.socketpair()
        await streams.accept(theirs)
        return ours

    opening = []
    streams = Streams()
    async with pool(get_connection=get_connection, max_connections_per_origin=1) as request:
        results = await asyncio.gather(
            *[get(request, f'http://{host}/') for host in ('a.test', 'b.test') * 3])
        assert [body for _, _, body in results] == [b'ok'] * 6
    await streams.all_ended()
    assert opening == ['a.test', 'b.test']
