"""Options of a pool: which there are, when they are checked, and what their defaults do."""

import asyncio
import gc
import inspect
import socket
import ssl

import aiodnsresolver
import pytest

from lowhaio import HttpConnectionError, Pool, empty_async_iterator
from tests.harness import (
    LOOPS,
    OK,
    Answering,
    Server,
    Unused,
    default_of,
    get,
    on_loops,
    open_descriptors,
    pool,
    turns,
)


@pytest.mark.parametrize('options, message', [
    ({'http_version': 'HTTP/1.1'},
     "http_version must be b'HTTP/1.1' or b'HTTP/1.0', got 'HTTP/1.1'"),
    ({'http_version': b'HTTP/2'},
     "http_version must be b'HTTP/1.1' or b'HTTP/1.0', got b'HTTP/2'"),
    ({'keep_alive_timeout': -1}, 'keep_alive_timeout must be a number of seconds, got -1'),
    ({'keep_alive_timeout': None}, 'keep_alive_timeout must be a number of seconds, got None'),
    ({'keep_alive_timeout': float('nan')},
     'keep_alive_timeout must be a number of seconds, got nan'),
    ({'keep_alive_timeout': float('inf')},
     'keep_alive_timeout must be a number of seconds, got inf'),
    ({'socket_timeout': 0}, 'socket_timeout must be a number of seconds, got 0'),
    ({'socket_timeout': '10'}, "socket_timeout must be a number of seconds, got '10'"),
    ({'recv_bufsize': 0}, 'recv_bufsize must be a number of bytes, 1 or more, got 0'),
    ({'recv_bufsize': 65536.0}, 'recv_bufsize must be a number of bytes, 1 or more, got 65536.0'),
    ({'max_header_length': 0}, 'max_header_length must be a number of bytes, 1 or more, got 0'),
    ({'max_header_length': None},
     'max_header_length must be a number of bytes, 1 or more, got None'),
])
def test_an_option_is_checked_when_the_pool_is_made(options, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 the whole message is compared
        Pool(**options)
    assert type(caught.value) is ValueError
    assert str(caught.value) == message


def test_the_options_are_keywords_and_those_that_there_are():
    with pytest.raises(TypeError):
        Pool(aiodnsresolver.Resolver)
    with pytest.raises(TypeError):
        Pool(redirects=1)


def test_the_names_the_order_and_the_defaults_of_the_parameters_stay(monkeypatch):
    request, close = Pool()
    assert {name: default_of(name) for name in (
        'http_version', 'keep_alive_timeout', 'max_header_length', 'socket_timeout')} == {
        'http_version': b'HTTP/1.1', 'keep_alive_timeout': 15, 'max_header_length': 16384,
        'socket_timeout': 10}
    monkeypatch.setattr(aiodnsresolver, 'Resolver', dict)
    assert default_of('get_dns_resolver')(get_logger_adapter=print) == {
        'get_logger_adapter': print}
    assert [(name, parameter.default) for name, parameter in
            list(inspect.signature(request).parameters.items())[:7]] == [
        ('method', inspect.Parameter.empty), ('url', inspect.Parameter.empty), ('params', ()),
        ('headers', ()), ('body', empty_async_iterator), ('body_args', ()), ('body_kwargs', ())]
    adapters = ['get_logger_adapter', 'get_resolver_logger_adapter']
    assert list(inspect.signature(request).parameters)[7:] == adapters
    assert list(inspect.signature(close).parameters) == adapters


@on_loops
async def test_the_lowest_values_of_the_options_work():
    script = Answering(OK)
    async with Server(script) as server, pool(
            keep_alive_timeout=0, recv_bufsize=1, max_header_length=len(OK) - 2) as request:
        for _ in range(2):
            assert (await get(request, server.url))[2] == b'ok'
    assert script.connections == [0, 1]
    Pool(max_header_length=1, socket_timeout=1e-6)


def test_the_default_socket_does_not_block_sends_at_once_and_probes_its_peer():
    with default_of('get_sock')(socket.AF_INET6) as sock:
        assert sock.family == socket.AF_INET6
        assert sock.type == socket.SOCK_STREAM
        assert sock.gettimeout() == 0
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, 'TCP_KEEPIDLE'):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60


def test_the_default_socket_does_without_an_option_that_the_system_does_not_have(monkeypatch):
    monkeypatch.delattr(socket, 'TCP_KEEPIDLE', raising=False)
    monkeypatch.delattr(socket, 'TCP_KEEPALIVE', raising=False)
    with default_of('get_sock')(socket.AF_INET) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_the_default_socket_is_closed_when_an_option_can_not_be_set():
    before = open_descriptors()
    with pytest.raises(OSError, match='.'):
        default_of('get_sock')(socket.AF_UNIX)
    gc.collect()
    assert open_descriptors() == before


def test_the_default_tls_verifies_certificates_and_names():
    context = default_of('get_ssl_context')()
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname


@on_loops
async def test_a_request_after_close_is_refused():
    unused = Unused()
    request, close = Pool(**unused.options)
    await close()
    await close()
    with pytest.raises(HttpConnectionError) as caught:
        await request(b'GET', 'http://example.com/SECRET')
    assert str(caught.value) == 'GET http://example.com:80, refused: the pool is closed'
    assert caught.value.phase == 'refused'
    assert type(caught.value.__cause__) is RuntimeError
    assert unused.uses == []


@pytest.mark.parametrize('factory', LOOPS.values(), ids=LOOPS)
def test_a_pool_is_made_before_any_loop_and_belongs_to_the_first_that_it_is_used_from(factory):
    request, close = Pool()

    async def first():
        async with Server(Answering(OK)) as server:
            assert (await get(request, server.url))[2] == b'ok'
            await turns(5)

    async def second():
        with pytest.raises(HttpConnectionError) as caught:
            await request(b'GET', 'http://127.0.0.1:1/SECRET')
        assert str(caught.value) == (
            'GET http://127.0.0.1:1, refused: the pool is bound to the event loop of its first '
            'request and can not be used from another: make one Pool for each loop')
        assert type(caught.value.__cause__) is RuntimeError
        await close()

    for main in (first, second):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())


def test_a_loop_without_readers_is_refused_by_name():
    class WithoutReaders(asyncio.SelectorEventLoop):
        add_reader = asyncio.AbstractEventLoop.add_reader

    async def main():
        async with pool(**unused.options) as request:
            with pytest.raises(HttpConnectionError) as caught:
                await request(b'GET', 'http://127.0.0.1:1/SECRET')
        assert str(caught.value) == (
            "GET http://127.0.0.1:1, refused: the event loop must have add_reader, as asyncio's "
            'selector loop and uvloop do: WithoutReaders does not')
        assert type(caught.value.__cause__) is RuntimeError

    unused = Unused()
    with asyncio.Runner(loop_factory=WithoutReaders) as runner:
        runner.run(main())
    assert unused.uses == []
