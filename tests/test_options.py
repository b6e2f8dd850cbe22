"""Options of a pool: which there are, when they are checked, and what their defaults do."""

import asyncio
import gc
import socket

import pytest

from lowhaio import HttpConnectionError, Pool
from tests.harness import (
    OK,
    Answering,
    Server,
    Unused,
    default_of,
    get,
    on_loops,
    open_descriptors,
    pool,
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
def test_each_option_is_checked_when_the_pool_is_made(options, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 the whole message is compared
        Pool(**options)
    assert type(caught.value) is ValueError
    assert str(caught.value) == message


@on_loops
async def test_the_lowest_values_of_the_options_work():
    script = Answering(OK)
    async with Server(script) as server, pool(
            keep_alive_timeout=0, recv_bufsize=1, max_header_length=len(OK) - 2) as request:
        for _ in range(2):
            assert (await get(request, server.url))[2] == b'ok'
    assert script.connections == [0, 1]
    Pool(max_header_length=1, socket_timeout=1e-6)


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
