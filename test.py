"""Tests of lowhaio: what a user of it can see, through its public names and real sockets.

Servers are scripted in bytes. Each test runs on asyncio's own loop, and on uvloop where that is
installed, unless the loop makes no difference. Afterwards there must be nothing left of it: no
descriptor, no error in the loop, no warning.
"""

import _ssl
import array
import asyncio
import base64
import collections
import concurrent.futures
import contextlib
import ctypes
import datetime
import errno
import functools
import gc
import http.server
import inspect
import ipaddress
import itertools
import json
import logging
import math
import os
import pathlib
import random
import re
import resource
import select
import signal
import socket
import ssl
import stat
import string
import struct
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
import types
import urllib.parse
import weakref
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv6Address

import aiodnsresolver
import anyio
import anyio.abc
import dnslib
import dnslib.server
import httpx
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import lowhaio
from lowhaio import (
    HttpConnectionClosedError,
    HttpConnectionError,
    HttpDataError,
    HttpDnsError,
    HttpError,
    HttpHeaderTooLong,
    HttpLoggerAdapter,
    HttpTlsError,
    Pool,
    buffered,
    empty_async_iterator,
    repeatable,
    streamed,
    timeout,
)

try:
    import uvloop
except ImportError:
    uvloop = None

LOOPS = {'asyncio': asyncio.SelectorEventLoop}
if uvloop is not None:
    LOOPS['uvloop'] = uvloop.new_event_loop
    uvloop.new_event_loop().close()  # the first one opens descriptors that stay

SCHEMES = pytest.mark.parametrize('scheme', ['http', 'https'])

# So that a hang is a failure. Nothing waits for it to pass.
PATIENCE = 20

# -------------------------------------------------------------------------------- harness


def on_loops(test: Callable[..., Awaitable[None]], loops=tuple(LOOPS)) -> Callable[..., None]:
    """Run an async test function on each loop, and look at what it leaves behind."""
    @pytest.mark.parametrize('loop_name', loops)
    @functools.wraps(test)
    def wrapper(*args, loop_name, **kwargs):
        with nothing_left() as errors:
            run_on(loop_name, errors, test, *args, **kwargs)

    # pytest finds the fixtures and parameters that a test wants in its signature.
    signature = inspect.signature(test)
    wrapper.__signature__ = signature.replace(parameters=[
        *signature.parameters.values(),
        inspect.Parameter('loop_name', inspect.Parameter.KEYWORD_ONLY)])
    return wrapper


def on_one_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """As `on_loops`, for many cases in which the loop makes no difference."""
    return on_loops(test, ['asyncio'])


def on_loops_at_once(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """As `on_loops`, but in a thread for each loop: for what mostly waits for time to pass. They
    share the fixtures."""
    @functools.wraps(test)
    def wrapper(*args, **kwargs):
        with nothing_left() as errors, concurrent.futures.ThreadPoolExecutor() as executor:
            runs = [executor.submit(run_on, loop_name, errors, test, *args, **kwargs)
                    for loop_name in LOOPS]
            for run in runs:
                run.result()

    return wrapper


def run_on(loop_name, errors, test, *args, **kwargs):
    def on_error(loop, context):
        # In debug mode, asyncio's servers report the clients that refuse their handshake.
        if context['message'] != 'Error on transport creation for incoming connection':
            errors.append(context)

    async def main():
        asyncio.get_running_loop().set_exception_handler(on_error)
        async with asyncio.timeout(PATIENCE):
            await test(*args, **kwargs)
        # What is done by callbacks of what has just ended is part of the test.
        await turns(5)

    with row(loop_name), asyncio.Runner(loop_factory=LOOPS[loop_name]) as runner:
        runner.run(main())


@contextlib.contextmanager
def nothing_left():
    """Yields a list for the errors that loops are told of."""
    before = open_descriptors()
    errors = []
    yield errors
    gc.collect()
    assert errors == []
    assert open_descriptors() == before


@pytest.fixture(scope='session', autouse=True)
def nothing_before():
    """What there is before the tests is no garbage of theirs: it is not looked at each time."""
    authority()  # or each thread would make its own
    gc.collect()
    gc.freeze()


def open_descriptors() -> set[str]:
    return set(os.listdir('/dev/fd'))


async def turns(number: int) -> None:
    """Let the loop turn, so that what is ready happens."""
    for _ in range(number):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    """Wait for what must happen sooner or later."""
    while not condition():
        await asyncio.sleep(0.001)


def has_arrived(sock: socket.socket, number: int) -> bool:
    """So many bytes can be read from a socket that does not block."""
    try:
        return len(sock.recv(number, socket.MSG_PEEK)) == number
    except BlockingIOError:
        return False


class Peer:
    """The server's end of a connection."""

    def __init__(self, reader, writer, index):
        self.reader = reader
        self.writer = writer
        self.index = index
        self.sock = writer.get_extra_info('socket')
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def read_head(self) -> bytes:
        return await self.reader.readuntil(b'\r\n\r\n')

    async def read(self, length: int) -> bytes:
        return await self.reader.readexactly(length)

    async def send(self, *pieces: bytes) -> None:
        """Send each piece so that the client, on the same loop, sees one after the other."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await turns(4)

    async def closed(self) -> bytes:
        """Wait until the client has closed, and return what it sent before."""
        try:
            return await self.reader.read()
        except ConnectionResetError:
            return b''

    async def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Close with a RST instead of a FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        self.writer.transport.abort()


class Server:
    """Runs the script, a coroutine function of a Peer, for each connection."""

    def __init__(self, script, context=None):
        self.script = script
        self.context = context
        self.peers: list[Peer] = []
        self.tasks: set[asyncio.Task] = set()
        self.failures: list[BaseException] = []

    async def __aenter__(self):
        self.server = await asyncio.start_server(
            self.serve, '127.0.0.1', 0, ssl=self.context, limit=2 ** 20)
        self.port = self.server.sockets[0].getsockname()[1]
        scheme = 'http' if self.context is None else 'https'
        self.origin = f'{scheme}://127.0.0.1:{self.port}'
        self.url = self.origin + '/'
        return self

    async def __aexit__(self, kind, error, traceback):
        self.server.close()
        for peer in self.peers:
            peer.writer.transport.abort()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await turns(3)
        if error is None and self.failures:
            raise self.failures[0]

    async def serve(self, reader, writer):
        peer = Peer(reader, writer, len(self.peers))
        self.peers.append(peer)
        self.tasks.add(asyncio.current_task())
        try:
            await self.script(peer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client hung up, or the test is over
        except BaseException as error:
            self.failures.append(error)
        finally:
            writer.close()


class Answering:
    """A script that answers the requests, over whatever connections, with one raw response
    after the other, the last one again and again, and keeps what was asked."""

    def __init__(self, *responses: bytes, close_after: bool = False):
        self.responses = list(responses)
        self.close_after = close_after
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.connections: list[int] = []  # the index of the connection of each request

    async def __call__(self, peer):
        while True:
            head = await peer.read_head()
            length = [line for line in head.lower().split(b'\r\n')
                      if line.startswith(b'content-length:')]
            self.bodies.append(await peer.read(int(length[0][15:])) if length else b'')
            self.heads.append(head)
            self.connections.append(peer.index)
            response = self.responses.pop(0) if len(self.responses) > 1 else self.responses[0]
            await peer.send(response)
            if self.close_after:
                return


@contextlib.asynccontextmanager
async def pool(**options):
    """A pool's `request`, and afterwards its `close`."""
    request, close = Pool(**options)
    try:
        yield request
    finally:
        await close()


async def get(request, url, **kwargs):
    code, headers, body = await request(b'GET', url, **kwargs)
    return code, headers, await buffered(body)


OK = b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok'


# ------------------------------------------------------------------------- public helpers


@pytest.mark.parametrize('kind, base', [
    (HttpError, Exception),
    (HttpConnectionError, HttpError),
    (HttpDnsError, HttpConnectionError),
    (HttpTlsError, HttpConnectionError),
    (HttpDataError, HttpError),
    (HttpConnectionClosedError, HttpDataError),
    (HttpHeaderTooLong, HttpDataError),
])
def test_the_errors_have_their_two_branches_and_their_three_facts(kind, base):
    assert kind.__bases__ == (base,)
    assert kind('text').phase == ''
    assert kind('text').reused is False
    assert kind('text').response_started is False


@on_loops
async def test_layers_can_tell_what_is_streamed_from_memory():
    data = bytearray(b'abc')
    assert isinstance(streamed(data), streamed)
    assert streamed(data).data is data
    assert isinstance(empty_async_iterator, streamed)
    assert empty_async_iterator.data == b''


@on_loops
async def test_streamed_yields_its_data_to_each_request_and_no_empty_chunk():
    body = streamed(b'abc')
    for _ in range(2):
        assert [chunk async for chunk in body()] == [b'abc']
    assert [chunk async for chunk in streamed(b'')()] == []
    assert [chunk async for chunk in empty_async_iterator()] == []


class OnlyOnce:
    """An async iterator that is its own, not hashable, and equal to all that there is."""

    def __init__(self, *chunks):
        self.chunks = list(chunks)

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.chunks:
            raise StopAsyncIteration
        return self.chunks.pop(0)

    def __eq__(self, other):
        return True


class OnlyOnceWithSlots:
    __slots__ = ('left',)

    def __init__(self):
        self.left = 1

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.left:
            raise StopAsyncIteration
        self.left -= 1
        return b'abc'


class EachTime:
    async def __aiter__(self):
        yield b'abc'


async def wrapping(chunks):
    async for chunk in chunks:
        yield chunk


async def ended_generator():
    chunks = yielding(b'abc')
    await buffered(chunks)
    return chunks


def returning(chunks):
    return lambda: chunks


async def read_chunks(chunks):
    return [chunk async for chunk in chunks]


NEW_EACH_TIME = 'body must return a new async iterator at each call, got '
GIVEN_BEFORE = NEW_EACH_TIME + 'that of an earlier call'
HAS_ENDED = NEW_EACH_TIME + 'one that has ended'
WAS_EMPTY = NEW_EACH_TIME + 'one that yielded nothing, unlike that of an earlier call'

# Functions that make a body, and what the second request of it fails with, if it does.
REPEATED = {
    'streamed': (lambda: streamed(b'abc'), None),
    'generator-function': (lambda: lambda: yielding(b'abc'), None),
    'iterable': (lambda: returning(EachTime()), None),
    'iterator-with-slots': (lambda: OnlyOnceWithSlots, None),
    'empty-each-time': (lambda: yielding, None),
    'one-generator': (lambda: returning(yielding(b'abc')), HAS_ENDED),
    'one-iterator': (lambda: returning(OnlyOnce(b'abc')), GIVEN_BEFORE),
    'one-iterator-with-slots': (lambda: returning(OnlyOnceWithSlots()), GIVEN_BEFORE),
    'wrapped-generator': (lambda: functools.partial(wrapping, yielding(b'abc')), WAS_EMPTY),
    'wrapped-empty-chunk': (
        lambda: functools.partial(wrapping, OnlyOnce(b'', bytearray(b'abc'))), WAS_EMPTY),
}


@pytest.mark.parametrize('wrap', [None, wrapping], ids=['bare', 'wrapped'])
@pytest.mark.parametrize('make, refused', REPEATED.values(), ids=REPEATED)
@on_loops
async def test_repeatable_lets_a_body_be_sent_again_only_if_it_can_be_made_again(
        make, refused, wrap):
    body = make() if wrap is None else repeatable(make(), wrap)
    body = repeatable(body)
    assert repeatable(body) is body
    first = await read_chunks(body())
    if refused is None:
        for _ in range(2):
            assert await read_chunks(body()) == first
    else:
        for _ in range(2):
            with pytest.raises(ValueError, match=f'^{refused}$'):
                await read_chunks(body())


@on_loops
async def test_repeatable_refuses_at_the_call_what_was_returned_before_or_has_ended():
    chunks = yielding(b'a', b'b')
    body = repeatable(returning(chunks), wrapping)
    before = body()
    assert await anext(before) == b'a'
    for _ in range(2):
        with pytest.raises(ValueError, match=f'^{GIVEN_BEFORE}$'):
            body()
    assert await anext(before) == b'b'
    await before.aclose()
    with pytest.raises(ValueError, match=f'^{HAS_ENDED}$'):
        repeatable(returning(await ended_generator()))()


@on_loops
async def test_one_repeatable_body_serves_requests_with_other_content():
    body = repeatable(yielding, wrapping)
    iterators = [body(b'a'), body(b'b'), body(), body(b'c')]
    read = await asyncio.gather(*map(read_chunks, iterators))
    assert read == [[b'a'], [b'b'], [], [b'c']]
    assert await read_chunks(body()) == []
    # As for two requests of a layer that makes them again, each of them on its own.
    assert await read_chunks(repeatable(body)(b'a')) == [b'a']
    assert await read_chunks(repeatable(body)()) == []
    # What was seen by one request was seen by all.
    one = repeatable(returning(OnlyOnce(b'a')), wrapping)
    assert await read_chunks(repeatable(one)()) == [b'a']
    with pytest.raises(ValueError, match=f'^{GIVEN_BEFORE}$'):
        repeatable(one)()


@on_loops
async def test_repeatable_of_what_wraps_twice_looks_at_the_innermost():
    async def encoding(chunks):
        async for chunk in chunks:
            yield chunk
        yield b'end'

    for inner in (encoding, wrapping):
        once = functools.partial(wrapping, yielding(b'a'))
        body = repeatable(repeatable(repeatable(once, inner), encoding))
        assert (await read_chunks(body()))[::2] in ([b'a'], [b'a', b'end'])
        with pytest.raises(ValueError, match=f'^{WAS_EMPTY}$'):
            await read_chunks(body())


@on_loops
async def test_repeatable_keeps_nothing_alive_that_can_be_referred_to_weakly():
    body = repeatable(yielding)
    references = []
    for _ in range(3):
        chunks = body(b'a')
        references.append(weakref.ref(chunks.chunks))
        await read_chunks(chunks)
    del chunks
    gc.collect()
    assert [reference() for reference in references] == [None] * 3


@on_loops
async def test_repeatable_closes_what_can_be_closed():
    async def body():
        try:
            yield b'a'
        finally:
            closed.append(True)

    closed = []
    chunks = repeatable(body)()
    assert await anext(chunks) == b'a'
    await chunks.aclose()
    assert closed == [True]
    await repeatable(returning(OnlyOnce()))().aclose()


@pytest.mark.parametrize('body', [streamed(b'abc'), empty_async_iterator, b'abc', None, [b'abc']])
def test_repeatable_returns_what_is_in_memory_and_what_the_request_refuses(body):
    assert repeatable(body) is body


@on_loops
async def test_a_body_that_can_not_be_made_again_is_refused_before_anything_is_sent():
    for make, refused in REPEATED.values():
        if refused is not None:
            body = repeatable(make())
            script = Answering(OK)
            async with Server(script) as server, pool() as request:
                await request(b'PUT', server.url, headers=of_length(3), body=body)
                with pytest.raises(HttpConnectionError) as caught:
                    await request(b'PUT', server.url, headers=of_length(3), body=body)
                assert str(caught.value) == at(server, f'the request body: {refused}')
            assert type(caught.value.__cause__) is ValueError
            assert len(script.heads) == 1


@on_loops
async def test_buffered_joins_the_chunks_of_any_async_iterator():
    async def chunks():
        yield b'a'
        await asyncio.sleep(0)
        yield b''
        yield b'bc'

    assert await buffered(chunks()) == b'abc'
    async with Server(Answering(OK)) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        assert await buffered(body) == b'ok'
        await read_before(body)


async def read_before(body):
    with pytest.raises(RuntimeError, match='^the response body has been read: it can be read '
                                           r'once, so keep what buffered\(\) returned$'):
        await buffered(body)


@on_loops
async def test_buffered_waits_for_the_rest_of_a_response():
    async def script(peer):
        await peer.read_head()
        await peer.send(OK[:-1])
        await waits.wait()
        await peer.send(OK[-1:])

    waits = asyncio.Event()
    async with Server(script) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        task = asyncio.create_task(buffered(body))
        await turns(5)
        waits.set()
        assert await task == b'ok'


def logged(caplog, values, level, message, *args, **kwargs):
    caplog.set_level(logging.DEBUG)
    HttpLoggerAdapter(logging.getLogger('any'), values).log(level, message, *args, **kwargs)
    return caplog.records[-1]


@pytest.mark.parametrize('extra, level, message, args, expected', [
    pytest.param({}, logging.INFO, 'text', (), '[http] text', id='no-values'),
    pytest.param(None, logging.INFO, 'text', (), '[http] text', id='no-extra'),
    pytest.param({'m': 'GET', 'u': 'http://h/p'}, logging.INFO, 'text', (),
                 '[http:GET,http://h/p] text', id='values'),
    pytest.param({'n': 1}, logging.INFO, 'text', (), '[http:1] text', id='a-value-no-str'),
    pytest.param({'u': '/%s%d%%41'}, logging.INFO, '%s of %s', (1, 2),
                 '[http:/%s%d%%41] 1 of 2', id='percent-in-a-value-with-args'),
    pytest.param({'u': '/%s%d%%41'}, logging.INFO, '100%', (),
                 '[http:/%s%d%%41] 100%', id='percent-in-a-value-without-args'),
    pytest.param({'u': '/%41'}, logging.INFO, '%(a)s', ({'a': 1},),
                 '[http:/%41] 1', id='one-mapping-as-args'),
    pytest.param({}, logging.INFO, ValueError('text'), (), '[http] text', id='message-no-str'),
    pytest.param({'m': 'GET', 'u': 'http://h/p?q#f'}, logging.DEBUG, 'text', (),
                 '[http:GET,http://h/p?q#f] text', id='the-query-at-debug'),
    pytest.param({'m': 'GET', 'u': 'http://h/p?q#f'}, logging.DEBUG + 1, 'text', (),
                 '[http:GET,http://h/p] text', id='no-query-above-debug'),
    pytest.param({'u': '/p?q'}, logging.CRITICAL, 'text', (),
                 '[http:/p] text', id='no-query-at-critical'),
])
def test_the_logger_adapter_prefixes_messages(caplog, extra, level, message, args, expected):
    record = logged(caplog, extra, level, message, *args)
    assert record.getMessage() == expected
    assert record.levelno == level


def test_the_logger_adapter_passes_what_else_a_message_is_logged_with(caplog):
    error = ValueError()
    record = logged(caplog, {'a': 1}, logging.INFO, 'text', extra={'b': 2}, exc_info=error)
    assert record.b == 2
    assert record.exc_info[1] is error


LOGGING_METHODS = ('debug', 'info', 'warning', 'error', 'exception', 'critical')


@pytest.mark.parametrize('method', LOGGING_METHODS)
def test_the_logger_adapter_tells_the_function_that_logs(caplog, method):
    caplog.set_level(logging.DEBUG)
    adapter = HttpLoggerAdapter(logging.getLogger('any'), {})

    def caller(**kwargs):
        getattr(adapter, method)('text', **kwargs)

    def caller_of_caller():
        caller(stacklevel=2)

    caller()
    caller_of_caller()
    assert [record.funcName for record in caplog.records] == ['caller', 'caller_of_caller']
    assert {record.filename for record in caplog.records} == {os.path.basename(__file__)}


def test_the_logger_adapter_inside_that_of_the_resolver_tells_the_function_that_logs(caplog):
    caplog.set_level(logging.DEBUG)
    inner = HttpLoggerAdapter(logging.getLogger('any'), {'u': '/%s'})

    def caller():
        aiodnsresolver.ResolverLoggerAdapter(inner, {'host': 'h'}).info('%s', 'text')

    caller()
    assert [(record.funcName, record.getMessage()) for record in caplog.records] == [
        ('caller', '[http:/%s] [dns:h] text')]


def test_the_logger_adapter_does_nothing_for_a_level_that_is_off(caplog):
    class Secret:
        def __str__(self):
            raise AssertionError('formatted')

    caplog.set_level(logging.WARNING)
    HttpLoggerAdapter(logging.getLogger('any'), {'a': Secret()}).info('%s', Secret())
    assert caplog.records == []


async def forever():
    await asyncio.Event().wait()


def cancelling():
    return asyncio.current_task().cancelling()


@on_loops
async def test_timeout_raises_in_its_block_and_takes_its_cancellation_back():
    loop = asyncio.get_running_loop()
    start = loop.time()
    with pytest.raises(asyncio.TimeoutError, match=(
            '^the block ran for more than 0.05 seconds$')) as caught, timeout(loop, 0.05):
        await forever()
    assert loop.time() - start > 0.045  # the clocks of the loops are coarse
    assert type(caught.value.__cause__) is asyncio.CancelledError
    assert cancelling() == 0
    await turns(2)  # where a cancellation not taken back would be raised


@on_loops
async def test_timeout_leaves_a_block_alone_that_ends_in_time():
    loop = asyncio.get_running_loop()
    with timeout(loop, 0.01):
        pass
    await asyncio.sleep(0.03)
    assert cancelling() == 0


@on_loops_at_once
async def test_timeout_starts_anew_when_it_is_reset():
    loop = asyncio.get_running_loop()
    with pytest.raises(asyncio.TimeoutError), timeout(loop, 0.15) as reset:
        # Nothing expires while the loop does not turn: when it does, the time would be over.
        time.sleep(0.2)
        reset()
        start = time.monotonic()
        await turns(3)
        reached = True
        await forever()
    assert reached
    assert time.monotonic() - start > 0.14


@on_loops
async def test_timeout_reset_after_it_has_expired_starts_nothing():
    loop = asyncio.get_running_loop()
    with timeout(loop, 0.01) as reset:
        with pytest.raises(asyncio.CancelledError):
            await forever()
        reset()
        with pytest.raises(asyncio.TimeoutError):
            async with asyncio.timeout(0.03):
                await forever()
    assert cancelling() == 0


@on_loops
async def test_timeout_that_a_block_swallows_is_taken_back_too():
    with timeout(asyncio.get_running_loop(), 0.01), contextlib.suppress(asyncio.CancelledError):
        await forever()
    assert cancelling() == 0
    await turns(2)


@pytest.mark.parametrize('has_expired', [False, True])
@on_loops
async def test_timeout_lets_another_exception_pass(has_expired):
    error = LookupError()
    with pytest.raises(LookupError) as caught, timeout(asyncio.get_running_loop(), 0.01):
        try:
            if has_expired:
                await forever()
        finally:
            raise error
    assert caught.value is error
    assert cancelling() == 0
    await turns(2)


@pytest.mark.parametrize('seconds', [
    pytest.param(0.01, id='before'),
    pytest.param(0.03, id='in-the-same-turn'),
    pytest.param(60, id='alone'),
])
@on_loops
async def test_timeout_lets_a_cancellation_from_outside_win(seconds):
    counts = []

    async def block():
        try:
            with timeout(loop, seconds):
                started.set()
                await forever()
        finally:
            counts.append(cancelling())

    loop = asyncio.get_running_loop()
    started = asyncio.Event()
    task = asyncio.create_task(block())
    await started.wait()
    loop.call_later(0.02, task.cancel)
    if seconds < 60:
        time.sleep(0.05)  # so that both are due in one turn of the loop
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert counts == [1]


@on_loops
async def test_timeout_counts_from_the_cancellations_that_there_were_before():
    async def main():
        try:
            await forever()
        finally:
            with pytest.raises(asyncio.TimeoutError), timeout(loop, 0.01):
                await forever()
            counts.append(cancelling())

    loop = asyncio.get_running_loop()
    counts = []
    task = asyncio.create_task(main())
    await turns(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert counts == [1]


@pytest.mark.parametrize('inner, outer, expected', [
    pytest.param(0.01, 60, 'inner', id='the-inner-expires'),
    pytest.param(60, 0.01, 'outer', id='the-outer-expires'),
    pytest.param(0.01, 0.02, 'outer', id='both-in-one-turn-the-inner-first'),
    pytest.param(0.02, 0.01, 'outer', id='both-in-one-turn-the-outer-first'),
])
@on_loops
async def test_timeout_inside_that_of_asyncio(inner, outer, expected):
    raised = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(outer) as outer_timeout:
            try:
                with timeout(asyncio.get_running_loop(), inner):
                    if max(inner, outer) < 1:
                        time.sleep(0.05)
                    await forever()
            except BaseException as error:
                raised.append(type(error))
                raise
    # An error of the inner one passes through the outer one, which has not expired.
    assert raised == [{'inner': TimeoutError, 'outer': asyncio.CancelledError}[expected]]
    assert outer_timeout.expired() is (expected == 'outer')
    assert cancelling() == 0


@on_loops
async def test_timeout_outside_a_task_is_an_error():
    def callback():
        try:
            with timeout(loop, 1):
                pass
        except BaseException as error:
            failed.set_result(error)

    loop = asyncio.get_running_loop()
    failed = loop.create_future()
    loop.call_soon(callback)
    error = await failed
    assert type(error) is RuntimeError
    assert str(error) == 'timeout() must be used in a task'


# ----------------------------------------------------------------------------------- Pool


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


def default_of(option):
    return inspect.signature(Pool).parameters[option].default


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


class Unused:
    """Options of a pool that must not get to ask the DNS, nor to open a socket."""

    def __init__(self):
        self.uses = []
        self.options = {'get_dns_resolver': self.get_dns_resolver, 'get_sock': self.get_sock}

    def get_dns_resolver(self, **_):
        self.uses.append('get_dns_resolver')
        raise AssertionError

    def get_sock(self, family):
        self.uses.append('get_sock')
        raise AssertionError


def refusals(*requests, http_version=b'HTTP/1.1'):
    """The errors of requests, each of which is refused before any DNS query or byte."""
    async def main():
        errors = []
        async with pool(http_version=http_version, **unused.options) as request:
            for kwargs in requests:
                with pytest.raises(HttpError) as caught:
                    await request(**kwargs)
                errors.append(caught.value)
        return errors

    unused = Unused()
    errors = asyncio.run(main())
    assert unused.uses == []
    for error in errors:
        assert type(error) is HttpConnectionError
        assert error.reused is False
        assert error.response_started is False
    return errors


def refusal(http_version=b'HTTP/1.1', **kwargs):
    return refusals(kwargs, http_version=http_version)[0]


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


# -------------------------------------------------------------------------------- logging


def resolver_of_localhost(get_logger_adapter):
    """The real resolver, with every name in its hosts."""
    async def get_host(hosts, fqdn, qtype):
        return aiodnsresolver.IPv4AddressExpiresAt('127.0.0.1', expires_at=0)

    return aiodnsresolver.Resolver(get_host=get_host, get_logger_adapter=get_logger_adapter)


@on_loops
async def test_a_request_is_logged(caplog):
    caplog.set_level(logging.DEBUG, 'lowhaio')
    async with Server(Answering(OK)) as server, pool() as request:
        url = server.url + '%41?SECRET'
        for _ in range(2):
            await get(request, url)
        await request(b'POST', server.url)
    where = f'{server.origin} (peer 127.0.0.1:{server.port})'
    debug = ('lowhaio', logging.DEBUG)
    info = ('lowhaio', logging.INFO)
    assert caplog.record_tuples == [
        (*info, f'[http:GET,{server.url}%41] Received 200 from {where}'),
        (*debug, f'[http:GET,{url}] That was request 1 of its connection'),
        (*info, f'[http:GET,{server.url}%41] Received 200 from {where}'),
        (*debug, f'[http:GET,{url}] That was request 2 of its connection'),
        (*info, f'[http:POST,{server.url}] Received 200 from {where}'),
        (*debug, f'[http:POST,{server.url}] That was request 3 of its connection'),
        (*debug, '[http] Closing the pool'),
    ]


@on_loops
async def test_the_resolver_logs_for_which_request_it_resolves(caplog):
    caplog.set_level(logging.WARNING, 'lowhaio')
    caplog.set_level(logging.INFO, 'aiodnsresolver')
    async with Server(Answering(OK)) as server, \
            pool(get_dns_resolver=resolver_of_localhost) as request:
        await get(request, f'http://any.example:{server.port}/?SECRET')
    assert caplog.record_tuples == [(
        'aiodnsresolver', logging.INFO,
        f'[http:GET,http://any.example:{server.port}/] [dns:any.example,A] Resolved '
        "b'any.example' from hosts: 127.0.0.1")]


class Adapters:
    """The `get_logger_adapter` and `get_resolver_logger_adapter` of a caller, with a name."""

    def __init__(self, name, log):
        self.name = name
        self.log = log
        self.options = {'get_logger_adapter': self.get_logger_adapter,
                        'get_resolver_logger_adapter': self.get_resolver_logger_adapter}

    def get_logger_adapter(self, extra):
        self.log.append((self.name, extra))
        return logging.LoggerAdapter(logging.getLogger('quiet'), extra)

    def get_resolver_logger_adapter(self, extra):
        def get_logger_adapter(resolver_extra):
            self.log.append((self.name + '-dns', {**extra, **resolver_extra}))
            return logging.LoggerAdapter(logging.getLogger('quiet'), extra)

        return get_logger_adapter


@on_loops
async def test_the_adapters_are_those_of_the_pool_or_else_of_the_call():
    def get_dns_resolver(get_logger_adapter):
        async def resolve(name, kind, get_logger_adapter):
            get_logger_adapter({'resolve': name})
            return (IPv4Address('127.0.0.1'),)

        async def clear_cache(get_logger_adapter):
            get_logger_adapter({'clear_cache': True})

        get_logger_adapter({'resolver': True})
        return resolve, clear_cache

    log = []
    request, close = Pool(get_dns_resolver=get_dns_resolver, **Adapters('pool', log).options)
    async with Server(Answering(OK)) as server:
        url = f'http://any.example:{server.port}/?query'
        await get(request, url)
        extra = {'lowhaio_method': 'GET', 'lowhaio_url': url}
        assert log == [
            ('pool', extra),
            ('pool-dns', {**extra, 'resolver': True}),
            ('pool-dns', {**extra, 'resolve': 'any.example'})]
        log.clear()
        await get(request, url, **Adapters('request', log).options)
        assert log == [
            ('request', extra),
            ('request-dns', {**extra, 'resolve': 'any.example'})]
        log.clear()
        await close()
        assert log == [('pool', {}), ('pool-dns', {'clear_cache': True})]
        log.clear()
        await close(**Adapters('close', log).options)
        assert log == [('close', {}), ('close-dns', {'clear_cache': True})]
        await turns(5)


class Raising(logging.LoggerAdapter):
    """Raises the error for messages of that level."""

    def __init__(self, level, error):
        super().__init__(logging.getLogger('quiet'), {})
        self.level = level
        self.error = error

    def log(self, level, message, *args, **kwargs):
        if level == self.level:
            raise self.error


def raising_for(level, error=KeyError('why')):  # noqa: B008
    return lambda extra: Raising(level, error)


@pytest.mark.parametrize('error, text', [
    (KeyError('why'), "KeyError: 'why'"),
    (ConnectionResetError('of a socket for logs'), 'ConnectionResetError: of a socket for logs')])
@pytest.mark.parametrize('level', [logging.DEBUG, logging.INFO])
@SCHEMES
@on_loops
async def test_an_adapter_that_raises_is_the_cause_of_an_error_and_leaves_nothing_open(
        scheme, level, error, text):
    """Kept quiet, it would never be known, so the response is lost with it."""
    script = Answering(OK[:-1])
    sockets = Sockets()
    async with Server(script, context_of(scheme)) as server, pool(
            get_ssl_context=trusting, get_sock=sockets) as request:
        raised = await failure(request(
            b'GET', server.url, get_logger_adapter=raising_for(level, error)))
        assert type(raised) is HttpDataError
        assert raised.__cause__ is error
        assert str(raised) == f'{where(server)}logging: {text}'
        assert (raised.reused, raised.response_started) == (False, True)
        assert sockets.socks[0].fileno() == -1
        # What has arrived to its end leaves a connection to be used again.
        script.responses = [OK]
        await get(request, server.url)
        raised = await failure(request(
            b'GET', server.url, get_logger_adapter=raising_for(level, error)))
        assert (type(raised), raised.reused) == (HttpDataError, True)
        await get(request, server.url)
    assert script.connections == [0, 1, 1, 1]


@pytest.mark.parametrize('level', [logging.DEBUG, logging.INFO])
@on_loops
async def test_what_is_no_exception_leaves_an_adapter_and_no_connection(level):
    sockets = Sockets()
    async with Server(holding(UNFINISHED)) as server, pool(get_sock=sockets) as request:
        with pytest.raises(asyncio.CancelledError) as caught:
            await request(b'GET', server.url, get_logger_adapter=raising_for(
                level, asyncio.CancelledError('why')))
        assert caught.value.args == ('why',)
        assert sockets.socks[0].fileno() == -1


def raises(*args, **kwargs):
    raise KeyError('why')


async def raises_later(*args, **kwargs):
    raise KeyError('why')


class RaisingMapping(dict):
    def keys(self):
        raise KeyError('why')

    items = __iter__ = keys


class RaisingIterable:
    def __iter__(self):
        yield (b'a', b'b')
        raise KeyError('why')


# What the caller gives as an option of the pool, or as an argument of the request.
RAISING = {
    'get_dns_resolver': ({'get_dns_resolver': raises}, {}, HttpDnsError, 'name.test'),
    'resolve': ({'get_dns_resolver': lambda **_: (raises_later, None)}, {}, HttpDnsError,
                'name.test'),
    'resolve at once': ({'get_dns_resolver': lambda **_: (raises, None)}, {}, HttpDnsError,
                        'name.test'),
    'get_sock': ({'get_sock': raises}, {}, HttpConnectionError, '127.0.0.1'),
    'get_connection': ({'get_connection': raises_later}, {}, HttpConnectionError, '127.0.0.1'),
    'get_connection at once': ({'get_connection': raises}, {}, HttpConnectionError, '127.0.0.1'),
    'get_ssl_context': ({'get_ssl_context': raises}, {}, HttpTlsError, '127.0.0.1'),
    'get_logger_adapter': ({}, {'get_logger_adapter': raises}, HttpConnectionError, '127.0.0.1'),
    'get_resolver_logger_adapter': (
        {}, {'get_resolver_logger_adapter': raises}, HttpDnsError, 'name.test'),
    'adapter of the resolver': (
        {}, {'get_resolver_logger_adapter': lambda extra: raises}, HttpDnsError, 'name.test'),
    'logging of the resolver': (
        {}, {'get_resolver_logger_adapter': lambda extra: raising_for(logging.INFO)},
        HttpDnsError, 'name.test'),
    'params': ({}, {'params': RaisingMapping(a=1)}, HttpConnectionError, '127.0.0.1'),
    'headers': ({}, {'headers': RaisingIterable()}, HttpConnectionError, '127.0.0.1'),
    'body': ({}, {'body': raises}, HttpConnectionError, '127.0.0.1'),
    'body_args': ({}, {'body': streamed(b''), 'body_args': RaisingIterable()},
                  HttpConnectionError, '127.0.0.1'),
    'body_kwargs': ({}, {'body': streamed(b''), 'body_kwargs': RaisingMapping(a=1)},
                    HttpConnectionError, '127.0.0.1'),
}


@on_loops
async def test_whatever_of_the_caller_raises_in_a_request_is_the_cause_of_an_error():
    for name, (options, arguments, kind, host) in RAISING.items():
        with row(name):
            async with Server(Answering(OK)) as server:
                if kind is HttpDnsError and 'get_dns_resolver' not in options:
                    options = {'get_dns_resolver': resolver_of_localhost}
                request, close = Pool(**options)
                scheme = 'https' if kind is HttpTlsError else 'http'
                url = f'{scheme}://{host}:{server.port}/'
                error = await failure(request(b'GET', url, **arguments))
                assert type(error) is kind
                assert type(error.__cause__) is KeyError
                assert "'why'" in str(error)
                with contextlib.suppress(HttpConnectionError):
                    await close()
                await until(lambda: len(server.peers) == (name in ACCEPTED))  # noqa: B023


# Those of which the request got as far as a connection.
ACCEPTED = {'get_ssl_context', 'body', 'body_args', 'body_kwargs'}


@on_loops
async def test_an_adapter_that_raises_as_a_request_has_to_wait_is_the_cause():
    async with Server(holding(UNFINISHED)) as server, pool(max_connections=1) as request:
        _, _, body = await request(b'GET', server.url)
        error = await failure(request(
            b'GET', server.url, get_logger_adapter=raising_for(logging.INFO)))
        assert (type(error), type(error.__cause__)) == (HttpConnectionError, KeyError)
        # It has no place, and waits for none.
        await body.aclose()
        _, _, body = await request(b'GET', server.url)
        await body.aclose()


# The options of a pool, and arguments of `close`.
RAISING_IN_CLOSE = {
    'get_logger_adapter': ({}, {'get_logger_adapter': raises}),
    'logging': ({}, {'get_logger_adapter': raising_for(logging.DEBUG)}),
    'get_resolver_logger_adapter': ({}, {'get_resolver_logger_adapter': raises}),
    'clear_cache': ({'get_dns_resolver': lambda **_: (resolve_to_localhost, raises_later)}, {}),
    'clear_cache at once': ({'get_dns_resolver': lambda **_: (resolve_to_localhost, raises)}, {}),
}


async def resolve_to_localhost(host, kind, get_logger_adapter):
    return [IPv4Address('127.0.0.1')]


@on_loops
async def test_whatever_of_the_caller_raises_in_close_the_pool_is_closed():
    for name, (options, arguments) in RAISING_IN_CLOSE.items():
        with row(name):
            sockets = Sockets()
            options = {'get_dns_resolver': resolver_of_localhost, **options}
            async with Server(Answering(OK)) as server:
                request, close = Pool(get_sock=sockets, **options)
                await get(request, f'http://name.test:{server.port}/')
                assert sockets.socks[0].fileno() != -1
                error = await failure(close(**arguments))
                assert type(error) is HttpConnectionError
                assert type(error.__cause__) is KeyError
                assert str(error) == "closing the pool: KeyError: 'why'"
                assert sockets.socks[0].fileno() == -1
                error = await failure(request(b'GET', server.url))
                assert str(error).endswith('refused: the pool is closed')


@on_loops
async def test_close_can_be_cancelled_with_a_message():
    async def clear_cache(get_logger_adapter):
        await forever()

    request, close = Pool(get_dns_resolver=lambda **_: (resolve_to_localhost, clear_cache))
    async with Server(Answering(OK)) as server:
        await get(request, f'http://name.test:{server.port}/')
        task = asyncio.create_task(close())
        await turns(3)
        task.cancel('why')
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert caught.value.args == ('why',)


# --------------------------------------------------------------------- what may not be sent

# Each row is one change to a request that is otherwise good, and the cause of its refusal.
# SECRET is wherever a caller may have one.
NAMED = 'GET http://example.com:80, refused: '
UNNAMED = 'GET, refused: '


@pytest.mark.parametrize('changes, kind, message', [
    pytest.param({'method': 'GET'}, TypeError,
                 '(str) http://example.com:80, refused: method must be bytes, got str',
                 id='method-str'),
    pytest.param({'method': None}, TypeError,
                 '(NoneType) http://example.com:80, refused: method must be bytes, got NoneType',
                 id='method-none'),
    pytest.param({'method': bytearray(b'GET')}, TypeError,
                 '(bytearray) http://example.com:80, refused: method must be bytes, got bytearray',
                 id='method-bytearray'),
    pytest.param({'method': b''}, ValueError,
                 "b'' http://example.com:80, refused: method must be a token, got b''",
                 id='method-empty'),
    pytest.param({'method': b'GET '}, ValueError,
                 "b'GET ' http://example.com:80, refused: method must be a token, got b'GET '",
                 id='method-space'),
    pytest.param({'method': b'GET / HTTP/1.1\r\nx: y'}, ValueError,
                 "b'GET / HTTP/1.1\\r\\nx: y' http://example.com:80, refused: method must be a "
                 "token, got b'GET / HTTP/1.1\\r\\nx: y'",
                 id='method-line-end'),
    pytest.param({'method': b'G\xc9T'}, ValueError,
                 "b'G\\xc9T' http://example.com:80, refused: method must be a token, "
                 "got b'G\\xc9T'",
                 id='method-not-ascii'),
    pytest.param({'method': b'CONNECT'}, ValueError,
                 'CONNECT http://example.com:80, refused: method must not be CONNECT: tunnels '
                 'are not supported',
                 id='method-connect'),
    pytest.param({'method': b'Connect'}, ValueError,
                 'Connect http://example.com:80, refused: method must not be CONNECT: tunnels '
                 'are not supported',
                 id='method-connect-in-another-case'),

    pytest.param({'url': b'http://example.com/'}, TypeError,
                 UNNAMED + 'url must be a str, got bytes', id='url-bytes'),
    pytest.param({'url': None}, TypeError,
                 UNNAMED + 'url must be a str, got NoneType', id='url-none'),
    pytest.param({'url': ['http://example.com/']}, TypeError,
                 UNNAMED + 'url must be a str, got list', id='url-list'),
    pytest.param({'url': ''}, ValueError,
                 UNNAMED + "url must start with http:// or https:// and a host, got ''",
                 id='url-empty'),
    pytest.param({'url': '/SECRET'}, ValueError,
                 UNNAMED + "url must start with http:// or https:// and a host, got ''",
                 id='url-path'),
    pytest.param({'url': '//example.com/SECRET'}, ValueError,
                 UNNAMED + "url must start with http:// or https:// and a host, got ''",
                 id='url-without-scheme'),
    pytest.param({'url': 'example.com/SECRET'}, ValueError,
                 UNNAMED + 'url must start with http:// or https:// and a host, '
                 "got 'example.com'",
                 id='url-host'),
    pytest.param({'url': 'example.com:80/SECRET'}, ValueError,
                 UNNAMED + 'url must start with http:// or https:// and a host, '
                 "got 'example.com'",
                 id='url-host-and-port'),
    pytest.param({'url': 'user:SECRET@example.com/'}, ValueError,
                 UNNAMED + "url must start with http:// or https:// and a host, got 'user'",
                 id='url-userinfo-without-scheme'),
    pytest.param({'url': 'http:/example.com/SECRET'}, ValueError,
                 UNNAMED + "url must start with http:// or https:// and a host, got 'http'",
                 id='url-one-slash'),
    pytest.param({'url': 'http:example.com'}, ValueError,
                 UNNAMED + "url must start with http:// or https:// and a host, got 'http'",
                 id='url-no-slash'),
    pytest.param({'url': 'http:\\\\example.com\\SECRET'}, ValueError,
                 UNNAMED + "url must start with http:// or https:// and a host, got 'http'",
                 id='url-backslashes'),
    pytest.param({'url': ' http://example.com/'}, ValueError,
                 UNNAMED + "url must start with http:// or https:// and a host, got ' http'",
                 id='url-space-before'),
    pytest.param({'url': 'x' * 61 + '/SECRET'}, ValueError,
                 UNNAMED + 'url must start with http:// or https:// and a host, got '
                 f"'{'x' * 60}'",
                 id='url-shown-cut-short'),
    pytest.param({'url': 'ftp://example.com/SECRET'}, ValueError,
                 UNNAMED + "url must have the scheme http or https, got 'ftp'",
                 id='scheme-another'),
    pytest.param({'url': 'ws://example.com/SECRET'}, ValueError,
                 UNNAMED + "url must have the scheme http or https, got 'ws'", id='scheme-ws'),
    pytest.param({'url': 'x' * 21 + '://example.com/SECRET'}, ValueError,
                 UNNAMED + f"url must have the scheme http or https, got '{'x' * 20}'",
                 id='scheme-shown-cut-short'),
    pytest.param({'url': 'httpſ://example.com/SECRET'}, ValueError,
                 UNNAMED + "url must start with http:// or https:// and a host, got 'httpſ'",
                 id='scheme-lookalike'),

    pytest.param({'url': 'http://example.com/SE\ud800CRET'}, ValueError,
                 UNNAMED + 'url must be encodable as UTF-8, but has a lone surrogate',
                 id='target-lone-surrogate'),
    pytest.param({'params': 'SECRET=SECRET'}, TypeError,
                 NAMED + 'params must be a mapping or a sequence of pairs, as for '
                 'urllib.parse.urlencode, got str',
                 id='params-str'),
    pytest.param({'params': 5}, TypeError,
                 NAMED + 'params must be a mapping or a sequence of pairs, as for '
                 'urllib.parse.urlencode, got int',
                 id='params-int'),
    pytest.param({'params': [('SECRET',)]}, TypeError,
                 NAMED + 'params must be a mapping or a sequence of pairs, as for '
                 'urllib.parse.urlencode, got list',
                 id='params-no-pairs'),
    *[pytest.param({'params': params}, TypeError,
                   NAMED + 'params must be pairs of str, got pairs of bytes: were they headers?',
                   id=f'params-of-bytes-{name}')
      for name, params in {
          'tuple': ((b'authorization', b'SECRET'),), 'list': [(b'accept', b'a'), ('b', b'SECRET')],
          'last': [('a', 'b'), (b'authorization', b'SECRET')],
          'mapping': {b'authorization': b'SECRET'}}.items()],
    pytest.param({'params': {'SECRET': '\ud800'}}, TypeError,
                 NAMED + 'params must be a mapping or a sequence of pairs, as for '
                 'urllib.parse.urlencode, got dict',
                 id='params-lone-surrogate'),

    pytest.param({'headers': 5}, TypeError, NAMED + 'headers must be pairs of name and value, '
                 'both bytes, got int',
                 id='headers-no-iterable'),
    pytest.param({'headers': {b'SECRET': b'SECRET'}}, TypeError,
                 NAMED + 'headers must be pairs of name and value, both bytes, '
                 'got a dict: give its items()',
                 id='headers-mapping'),
    pytest.param({'headers': {b'xy': b'SECRET'}}, TypeError,
                 NAMED + 'headers must be pairs of name and value, both bytes, '
                 'got a dict: give its items()',
                 id='headers-mapping-of-names-of-two-bytes'),
    pytest.param({'headers': b'SECRET'}, TypeError,
                 NAMED + 'headers must be pairs of name and value, both bytes, got int',
                 id='headers-bytes'),
    pytest.param({'headers': ((b'SECRET',),)}, TypeError,
                 NAMED + 'headers must be pairs of name and value, both bytes, got (bytes)',
                 id='headers-one-item'),
    pytest.param({'headers': ((b'SECRET', b'SECRET', b''),)}, TypeError,
                 NAMED + 'headers must be pairs of name and value, both bytes, '
                 'got (bytes, bytes, bytes)',
                 id='headers-three-items'),
    pytest.param({'headers': (None,)}, TypeError,
                 NAMED + 'headers must be pairs of name and value, both bytes, got NoneType',
                 id='headers-none'),
    pytest.param({'headers': (('a', b'SECRET'),)}, TypeError,
                 NAMED + 'headers must be pairs of name and value, both bytes, got (str, bytes)',
                 id='headers-name-str'),
    pytest.param({'headers': [[b'a', 'SECRET']]}, TypeError,
                 NAMED + 'headers must be pairs of name and value, both bytes, got (bytes, str)',
                 id='headers-value-str'),
    pytest.param({'headers': ((b'a', 5),)}, TypeError,
                 NAMED + 'headers must be pairs of name and value, both bytes, got (bytes, int)',
                 id='headers-value-int'),
    pytest.param({'headers': ((b'a', None),)}, TypeError,
                 NAMED + 'headers must be pairs of name and value, both bytes, '
                 'got (bytes, NoneType)',
                 id='headers-value-none'),
    pytest.param({'headers': ((bytearray(b'a'), b'SECRET'),)}, TypeError,
                 NAMED + 'headers must be pairs of name and value, both bytes, '
                 'got (bytearray, bytes)',
                 id='headers-name-bytearray'),
    pytest.param({'headers': ((memoryview(b'a'), b'SECRET'),)}, TypeError,
                 NAMED + 'headers must be pairs of name and value, both bytes, '
                 'got (memoryview, bytes)',
                 id='headers-name-memoryview'),
    pytest.param({'headers': ((b'transfer-encoding', memoryview(b'chunked')),)}, TypeError,
                 NAMED + 'headers must be pairs of name and value, both bytes, '
                 'got (bytes, memoryview)',
                 id='headers-value-memoryview'),
    pytest.param({'headers': ((b'', b'SECRET'),)}, ValueError,
                 NAMED + "headers must have tokens as names, got b''", id='headers-name-empty'),
    pytest.param({'headers': ((b'a:', b'SECRET'),)}, ValueError,
                 NAMED + "headers must have tokens as names, got b'a:'", id='headers-name-colon'),
    pytest.param({'headers': ((b'a\r\nb', b'SECRET'),)}, ValueError,
                 NAMED + "headers must have tokens as names, got b'a\\r\\nb'",
                 id='headers-name-line-end'),
    pytest.param({'headers': ((b'a\n', b'SECRET'),)}, ValueError,
                 NAMED + "headers must have tokens as names, got b'a\\n'",
                 id='headers-name-line-end-at-its-end'),
    pytest.param({'headers': ((b' ' + b'x' * 60, b'SECRET'),)}, ValueError,
                 NAMED + f"headers must have tokens as names, got b' {'x' * 59}'...",
                 id='headers-name-shown-cut-short'),
    pytest.param({'headers': ((b' ' + b'x' * 59, b'SECRET'),)}, ValueError,
                 NAMED + f"headers must have tokens as names, got b' {'x' * 59}'",
                 id='headers-name-just-shown'),
    pytest.param({'headers': ((b'A', b'SECRET\r\nb: c'),)}, ValueError,
                 NAMED + 'headers must not have control characters but HTAB in a value: see '
                 "that of b'A'",
                 id='headers-value-line-end'),
    pytest.param({'headers': ((b'A', b'SECRET\n'),)}, ValueError,
                 NAMED + 'headers must not have control characters but HTAB in a value: see '
                 "that of b'A'",
                 id='headers-value-line-end-at-its-end'),

    pytest.param({'headers': ((b'host', b'SECRET'), (b'Host', b'SECRET'))}, ValueError,
                 NAMED + 'headers must have at most one host', id='host-twice'),
    *[pytest.param({'headers': ((b'host', value),)}, ValueError,
                   NAMED + 'headers must have as host a name, an IPv4 address or an IPv6 address '
                   'in brackets, and a port of digits if any',
                   id=f'host-{name}')
      for name, value in {
          'empty': b'', 'white-space': b' \t', 'port-alone': b':80', 'two': b'a b',
          'list': b'a, b', 'list-without-space': b'a,b', 'userinfo': b'user@a', 'path': b'a/',
          'url': b'http://a', 'backslash': b'a\\b', 'query': b'a?b', 'fragment': b'a#b',
          'not-ascii': b'\xe4', 'percent': b'a%2', 'port-of-letters': b'a:b',
          'two-ports': b'a:1:2', 'port-of-6-digits': b'a:000080', 'brackets': b'[]',
          'ipv6-without-brackets': b'::1', 'brackets-of-a-name': b'[a]',
          'ipv6-that-is-none': b'[1::2::3]', 'zone': b'[fe80::1%25a]',
          'ipv6-and-more': b'[::1]a', 'half-a-bracket': b'[::1', 'quoted': b'"a"'}.items()],
    *[pytest.param({'headers': ((b'Expect', value), *length)}, ValueError,
                   NAMED + 'headers must not have expect: 100-continue without content',
                   id=f'expect-{name}')
      for name, value, length in (
          ('without-content', b'100-continue', ()),
          ('in-a-list-without-content', b'a, 100-Continue', ()),
          ('with-a-length-of-0', b'100-continue', ((b'content-length', b'0'),)))],
    pytest.param({'headers': ((b'content-length', b'1'), (b'Content-Length', b'1'))}, ValueError,
                 NAMED + 'headers must have at most one content-length',
                 id='content-length-twice'),
    *[pytest.param({'headers': ((b'Content-Length', value),)}, ValueError,
                   NAMED + 'headers must have 1 to 20 digits as content-length, '
                   f'got {value!r}',
                   id=f'content-length-{name}')
      for name, value in {
          'empty': b'', 'plus': b'+1', 'minus': b'-1', 'underscore': b'1_0', 'hex': b'0x1',
          'list': b'1, 1', 'space-before': b' 1', 'space-after': b'1 ', 'word': b'one',
          'point': b'1.0', 'of-21-digits': b'0' * 21,
          'full-width': '１'.encode(), 'arabic': '١'.encode()}.items()],
    pytest.param({'headers': ((b'content-length', b'1' * 5000),)}, ValueError,
                 NAMED + 'headers must have 1 to 20 digits as content-length, got '
                 f"b'{'1' * 60}'...",
                 id='content-length-of-5000-digits'),
    pytest.param({'headers': ((b'content-length', b'1'), (b'transfer-encoding', b'chunked'))},
                 ValueError,
                 NAMED + 'headers must not have content-length and transfer-encoding together',
                 id='content-length-and-transfer-encoding'),
    pytest.param({'headers': ((b'Transfer-Encoding', b'chunked'), (b'content-length', b'0'))},
                 ValueError,
                 NAMED + 'headers must not have content-length and transfer-encoding together',
                 id='transfer-encoding-and-content-length'),
    pytest.param({'headers': 2 * ((b'transfer-encoding', b'chunked'),)}, ValueError,
                 NAMED + 'headers must have at most one transfer-encoding',
                 id='transfer-encoding-twice'),
    *[pytest.param({'headers': ((b'transfer-encoding', value),)}, ValueError,
                   NAMED + 'headers must have chunked as the last transfer-encoding, '
                   f'got {value!r}',
                   id=f'transfer-encoding-{name}')
      for name, value in {
          'empty': b'', 'gzip': b'gzip', 'identity': b'identity', 'last': b'chunked, gzip',
          'comma': b'chunked,', 'another-word': b'xchunked', 'quoted': b'"chunked"',
          'parameter': b'chunked;a=b', 'vertical-tab': b'gzip,\x85chunked'}.items()],
    *[pytest.param({'headers': ((b'transfer-encoding', value),)}, ValueError,
                   NAMED + 'headers must have a list of codings as transfer-encoding, chunked '
                   f'only as the last of them, got {value!r}',
                   id=f'transfer-encoding-{name}')
      for name, value in {
          'chunked-twice': b'chunked, chunked', 'chunked-twice-in-any-case': b'CHUNKED,chunked',
          'chunked-first-of-three': b'chunked, gzip, chunked',
          'chunked-with-a-parameter-first': b'chunked;a=b, chunked', 'open-quote': b'"a, chunked',
          'quotes': b'"a", chunked', 'open-quote-in-a-parameter': b'a;b="c, chunked',
          'escaped-quote': b'a;b="c\\", chunked', 'two-words': b'gzip x, chunked',
          'empty-member': b'gzip,, chunked', 'comma-first': b', chunked',
          'no-parameter': b'a;, chunked',
          'parameter-without-value': b'a;b, chunked', 'not-ascii': b'\xe4, chunked',
          'slash': b'a/b, chunked'}.items()],
    pytest.param({'headers': ((b'transfer-encoding', b'chunked'),), 'http_version': b'HTTP/1.0'},
                 ValueError,
                 NAMED + 'headers must not have transfer-encoding in an HTTP/1.0 request',
                 id='transfer-encoding-in-http-1.0'),
])
def test_what_a_caller_gives_is_refused_before_any_dns_query_or_byte(changes, kind, message):
    arguments = {'method': b'GET', 'url': 'http://example.com/SECRET?SECRET#SECRET',
                 'params': {'SECRET': 'SECRET'}, 'headers': ((b'authorization', b'SECRET'),)}
    error = refusal(**{**arguments, **changes})
    assert str(error) == message
    assert error.phase == 'refused'
    assert isinstance(error.__cause__, kind)
    assert message.endswith(f'refused: {error.__cause__}')


REFUSED_AUTHORITIES = {
    'empty': '',
    'port-only': ':80',
    'dot': '.',
    'dots': '..',
    'first-label-empty': '.example',
    'label-empty': 'a..example',
    'last-labels-empty': 'a.example..',
    'label-of-64': 'a' * 64 + '.example',
    'name-of-254': '.'.join(['a' * 49] * 5) + '.abcd',
    'name-of-407': 'a.' * 200 + 'example',
    'name-of-807-in-idna': 'ä.' * 100 + 'example',
    'space': 'exa mple.com',
    'space-after': 'example.com ',
    'no-break-space': 'exa\u00a0mple.com',
    'comma': 'exa,mple.com',
    'semicolon': 'exa;mple.com',
    'bar': 'exa|mple.com',
    'quote': 'exa"mple.com',
    'angle-brackets': '<example.com>',
    'star': '*.example',
    'backslash': 'example.com\\',
    'backslash-inside': 'example.com\\.evil.example',
    'percent-encoded': 'ex%61mple.com',
    'percent-encoded-digit': '%31.2.3.4',
    'percent-encoded-dot': 'example%2ecom',
    'percent-encoded-nul': 'example.com%00.evil.example',
    'percent-encoded-utf-8': 'b%C3%BCcher.example',
    'full-width-slash': 'example.com\uff0f.evil.example',
    'full-width-question-mark': 'example.com\uff1f.evil.example',
    'full-width-number-sign': 'example.com\uff03.evil.example',
    'full-width-colon': 'example.com\uff1a80.evil.example',
    'full-width-at': 'example.com\uff20evil.example',
    'full-width-percent': 'example.com\uff05evil.example',
    'full-width-backslash': 'example.com\uff3cevil.example',
    'a-slash-c': 'example.c\u2100.evil.example',
    'digit-in-parentheses': '\u2474.example',
    'one-number': '1',
    'address-as-a-number': '2130706433',
    'address-as-a-hex-number': '0x7f000001',
    'hex-first-label': '0x7f.0.0.1',
    'address-of-two-numbers': '127.1',
    'address-of-three-numbers': '127.0.1',
    'address-of-five-numbers': '1.2.3.4.5',
    'hex-last-label': '1.2.3.0x4',
    'hex-last-label-in-upper-case': '1.2.3.0X4',
    'hex-last-label-without-digits': 'example.0x',
    'number-as-last-label': 'example.1',
    'number-as-last-label-and-a-dot': 'example.1.',
    'full-width-number-as-last-label': 'example.\uff11',
    'address-too-short': '1.2.3',
    'ipv4-of-four-digits': '1.2.3.1000',
    'ipv6-without-brackets': '::1',
    'ipv6-bracket-only': '[',
    'ipv6-not-closed': '[::1',
    'ipv6-not-opened': '::1]',
    'ipv6-twice-in-brackets': '[[::1]]',
    'ipv6-and-more': '[::1]x',
    'ipv6-after-more': 'x[::1]',
    'zone-empty': '[fe80::1%]',
    'zone-empty-encoded': '[fe80::1%25]',
    'zone-with-space': '[fe80::1%25a b]',
    'zone-with-percent': '[fe80::1%25a%25b]',
    'zone-not-ascii': '[fe80::1%25ä]',
    'zone-with-slash': '[fe80::1%25' + 'a' * 10_000 + '/]',
    'user': 'user@example.com',
    'user-and-password': 'SECRET:SECRET@example.com',
    'user-and-empty-password': 'SECRET:@example.com',
    'userinfo-empty': '@example.com',
    'userinfo-of-two-empty': ':@example.com',
    'user-like-a-host': 'example.com:80@evil.example',
    'user-like-a-host-and-a-backslash': 'example.com\\@evil.example',
    'two-users': 'a@b@example.com',
    'port-0': 'example.com:0',
    'port-65536': 'example.com:65536',
    'port-of-5000-digits': 'example.com:' + '9' * 5000,
    'port-minus': 'example.com:-1',
    'port-plus': 'example.com:+80',
    'port-underscore': 'example.com:8_0',
    'port-space-before': 'example.com: 80',
    'port-space-after': 'example.com:80 ',
    'port-word': 'example.com:http',
    'port-hex': 'example.com:0x50',
    'port-twice': 'example.com:80:80',
    'port-full-width': 'example.com:\uff18\uff10',
    'port-arabic': 'example.com:\u0668\u0660',
    'port-percent-encoded': 'example.com:%38%30',
    'port-without-colon': '[::1]80',
    'ideographic-dot': '\u3002',
    'full-width-dots': '\uff0e\uff0e',
    'label-empty-in-idna': 'ä..example',
    'label-that-idna-makes-empty': '\u00ad.example',
    'label-of-64-in-idna': 'ä' * 64 + '.example',
    'lone-surrogate': 'a\ud800.example',
    'prefix-of-idna-before-idna': 'xn--ä.example',
    'ipv4-of-more-than-a-byte': '256.1.1.1',
    'ipv4-of-999': '999.1.1.1',
    'ipv4-with-a-leading-zero': '01.2.3.4',
    'ipv6-empty': '[]',
    'ipv6-no-hex': '[::g]',
    'ipv6-too-short': '[1:2:3:4:5:6:7]',
    'ipv6-two-gaps': '[::1::]',
    'ipv6-with-a-full-width-digit': '[::\uff11]',
    'ipv4-in-brackets': '[127.0.0.1]',
    'name-in-brackets': '[example.com]',
    'ip-of-the-future': '[v1.a]',
    'zone-only': '[%25lo]',
}


def test_an_authority_is_refused_before_any_dns_query_or_byte():
    for name, authority in REFUSED_AUTHORITIES.items():
        for error in refusals(*[
                {'method': b'GET', 'url': f'{scheme}://{authority}{rest}'}
                for scheme in ('http', 'https') for rest in ('', '/SECRET?SECRET#SECRET')]):
            assert isinstance(error.__cause__, ValueError), name
            assert str(error) == f'GET, refused: {error.__cause__}'
            assert str(error).startswith('GET, refused: url must '), name
            assert 'SECRET' not in str(error), name
            assert len(str(error)) < 300, name


@pytest.mark.parametrize('authority, message', [
    ('a:b@example.com', 'url must not have userinfo (user:password@): use a header'),
    ('example.com:x', "url must have a host, and a port of digits if any, got 'example.com:x'"),
    ('example.com:65536', "url must have a port from 1 to 65535, got '65536'"),
    ('example.com:' + '9' * 30, f"url must have a port from 1 to 65535, got '{'9' * 20}'"),
    *[(host, 'url must have as host an IPv4 address, an IPv6 address in brackets, or a name of '
       f'letters, digits, "-", "_" and ".", got {host!r}')
      for host in ('[::1%]', '[::g]', '256.1.1.1', 'ä..example', 'a_b.1')],
    ('x' * 64, 'url must have as host an IPv4 address, an IPv6 address in brackets, or a name '
     f"""of letters, digits, "-", "_" and ".", got '{'x' * 60}'"""),
])
def test_the_refusal_of_an_authority_tells_what_was_expected_and_what_came(authority, message):
    error = refusal(method=b'GET', url=f'http://{authority}/')
    assert str(error) == f'GET, refused: {message}'


@pytest.mark.parametrize('authority, kind, text', [
    ('256.1.1.1', ipaddress.AddressValueError, "Octet 256 (> 255) not permitted in '256.1.1.1'"),
    ('[::g]', ipaddress.AddressValueError, "Only hex digits permitted in 'g' in '::g'"),
    ('[::1%]', ValueError, 'the zone must be of unreserved characters'),
    ('ä..example', UnicodeError, None),
])
def test_the_refusal_of_a_host_has_the_reason_in_its_causes(authority, kind, text):
    reason = refusal(method=b'GET', url=f'http://{authority}/').__cause__.__cause__
    assert isinstance(reason, kind)
    assert text in (None, str(reason))


def test_a_control_character_anywhere_in_a_url_is_refused():
    urls = [(before, chr(code), after)
            for code in (*range(0x20), *range(0x7f, 0xa0))
            for before, after in (('http://a', '/'), ('http://a/', ''), ('http://a/b', 'c'),
                                  ('http://a/?', ''), ('http://a/#', 'b'), ('', 'http://a/'),
                                  ('ht', 'tp://a/'), ('http://', 'a/'), ('http:', '//a/'))]
    errors = refusals(*[{'method': b'GET', 'url': ''.join(url)} for url in urls])
    for (before, character, _), error in zip(urls, errors, strict=True):
        assert type(error.__cause__) is ValueError
        assert str(error) == ('GET, refused: url must not contain control characters, got '
                              f'{character!r} at index {len(before)}')


def test_the_start_of_a_long_method_is_shown():
    error = refusal(method=b'A' * 70, url='http://example.com/', params=5)
    assert str(error).startswith('A' * 60)
    assert str(error).endswith(' http://example.com:80, refused: params must be a mapping or a '
                               'sequence of pairs, as for urllib.parse.urlencode, got int')


def test_what_the_headers_of_the_caller_raise_is_a_connection_error():
    def headers():
        yield b'a', b'b'
        raise LookupError('text')

    error = refusal(method=b'GET', url='http://example.com/', headers=headers())
    assert type(error.__cause__) is LookupError


# ------------------------------------------------------------------------ what is sent, how


def resolver_to(address, asked=None):
    """A `get_dns_resolver` to whom every name is this address; it keeps what it was asked."""
    def get_dns_resolver(get_logger_adapter):
        async def resolve(name, kind, get_logger_adapter):
            if asked is not None:
                asked.append((name, kind))
            return (address,)

        async def clear_cache(get_logger_adapter):
            pass

        return resolve, clear_cache

    return get_dns_resolver


class Redirecting:
    """A `get_sock` whose sockets connect to one port, and keep where they were told to."""

    def __init__(self, port):
        self.port = port
        self.told = []

    def __call__(self, family):
        redirecting = self

        class Redirected(socket.socket):
            def connect(self, address):
                redirecting.told.append((family, address))
                super().connect(('127.0.0.1', redirecting.port))

        sock = Redirected(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        return sock


ELSEWHERE = IPv4Address('192.0.2.1')
ZONE_INDEX, ZONE = socket.if_nameindex()[0]

# The authority, the `host` field, the name asked for if it is no address, the address told.
AUTHORITIES = {
    'name': ('example.com', 'example.com', 'example.com', None),
    'name-of-one-label': ('localhost', 'localhost', 'localhost', None),
    'upper-case': ('EXAMPLE.Com', 'example.com', 'example.com', None),
    'trailing-dot': ('example.com.', 'example.com', 'example.com', None),
    'empty-port': ('example.com:', 'example.com', 'example.com', None),
    'default-port': ('example.com:80', 'example.com', 'example.com', None),
    'default-port-of-the-other-scheme': ('example.com:443', 'example.com:443', 'example.com',
                                         ('192.0.2.1', 443)),
    'lowest-port': ('example.com:1', 'example.com:1', 'example.com', ('192.0.2.1', 1)),
    'highest-port': ('example.com:65535', 'example.com:65535', 'example.com',
                     ('192.0.2.1', 65535)),
    'trailing-dot-and-port': ('example.com.:81', 'example.com:81', 'example.com',
                              ('192.0.2.1', 81)),
    'underscore': ('_a._b.example', '_a._b.example', '_a._b.example', None),
    'hyphens': ('-a-.b--c.example', '-a-.b--c.example', '-a-.b--c.example', None),
    'label-of-63': ('a' * 63 + '.example', 'a' * 63 + '.example', 'a' * 63 + '.example', None),
    'name-of-253': (('a' * 62 + '.') * 4 + 'b', ('a' * 62 + '.') * 4 + 'b',
                    ('a' * 62 + '.') * 4 + 'b', None),
    'name-of-253-and-a-dot': (('a' * 62 + '.') * 4 + 'b.', ('a' * 62 + '.') * 4 + 'b',
                              ('a' * 62 + '.') * 4 + 'b', None),
    'name-of-253-and-port': (('a' * 62 + '.') * 4 + 'b:8080', ('a' * 62 + '.') * 4 + 'b:8080',
                             ('a' * 62 + '.') * 4 + 'b', ('192.0.2.1', 8080)),
    'number-as-first-label': ('1.example', '1.example', '1.example', None),
    'hex-number-as-first-label': ('0x7f.example', '0x7f.example', '0x7f.example', None),
    'last-label-begins-with-a-number': ('a.1b', 'a.1b', 'a.1b', None),
    'last-label-begins-like-a-hex-number': ('a.0xfg', 'a.0xfg', 'a.0xfg', None),
    'idna': ('bücher.example', 'xn--bcher-kva.example', 'xn--bcher-kva.example', None),
    'idna-in-upper-case': ('BÜCHER.EXAMPLE', 'xn--bcher-kva.example', 'xn--bcher-kva.example',
                           None),
    'idna-decomposed': ('bu\u0308cher.example', 'xn--bcher-kva.example',
                        'xn--bcher-kva.example', None),
    'idna-encoded-before': ('XN--BCHER-KVA.example', 'xn--bcher-kva.example',
                            'xn--bcher-kva.example', None),
    'idna-trailing-dot': ('bücher.example.', 'xn--bcher-kva.example', 'xn--bcher-kva.example',
                          None),
    'idna-dots': ('bücher\u3002example\uff61', 'xn--bcher-kva.example', 'xn--bcher-kva.example',
                  None),
    'full-width': ('ｅｘａｍｐｌｅ．ｃｏｍ', 'example.com', 'example.com', None),
    'kelvin': ('\u212aelvin.example', 'kelvin.example', 'kelvin.example', None),
    'ipv4': ('127.0.0.1', '127.0.0.1', None, ('127.0.0.1', 80)),
    'ipv4-and-port': ('127.0.0.1:8080', '127.0.0.1:8080', None, ('127.0.0.1', 8080)),
    'ipv4-trailing-dot': ('127.0.0.1.', '127.0.0.1', None, ('127.0.0.1', 80)),
    'ipv4-full-width': ('１２７．0。0｡１', '127.0.0.1', None, ('127.0.0.1', 80)),
    'ipv4-highest': ('255.255.255.255', '255.255.255.255', None, ('255.255.255.255', 80)),
    'ipv6': ('[::1]', '[::1]', None, ('::1', 80, 0, 0)),
    'ipv6-and-port': ('[::1]:8080', '[::1]:8080', None, ('::1', 8080, 0, 0)),
    'ipv6-empty-port': ('[::1]:', '[::1]', None, ('::1', 80, 0, 0)),
    'ipv6-long': ('[2001:0DB8:0:0:0:0:0:0A]', '[2001:db8::a]', None, ('2001:db8::a', 80, 0, 0)),
    'ipv6-with-ipv4': ('[::ffff:1.2.3.4]', f'[{IPv6Address("::ffff:1.2.3.4")}]', None,
                       (str(IPv6Address('::ffff:1.2.3.4')), 80, 0, 0)),
    'zone': (f'[FE80::A%25{ZONE}]', '[fe80::a]', None, ('fe80::a', 80, 0, ZONE_INDEX)),
    'zone-and-port': (f'[fe80::a%25{ZONE}]:8080', '[fe80::a]:8080', None,
                      ('fe80::a', 8080, 0, ZONE_INDEX)),
    'zone-bare': (f'[fe80::a%{ZONE}]', '[fe80::a]', None, ('fe80::a', 80, 0, ZONE_INDEX)),
    'zone-number': ('[fe80::a%257]', '[fe80::a]', None, ('fe80::a', 80, 0, 7)),
}


@on_loops
async def test_a_host_has_one_form_for_the_resolver_the_connection_and_the_host_field():
    results, expected = {}, {}
    script = Answering(OK)
    async with Server(script) as server:
        for name, (authority, field, asked_for, told) in AUTHORITIES.items():
            asked = []
            redirecting = Redirecting(server.port)
            async with pool(get_dns_resolver=resolver_to(ELSEWHERE, asked),
                            get_sock=redirecting) as request:
                await get(request, f'http://{authority}/p')
            results[name] = script.heads[-1], asked, redirecting.told
            family = socket.AF_INET if told is None or len(told) == 2 else socket.AF_INET6
            expected[name] = (
                f'GET /p HTTP/1.1\r\nhost: {field}\r\n\r\n'.encode(),
                [] if asked_for is None else [(asked_for, aiodnsresolver.TYPES.A)],
                [(family, told or ('192.0.2.1', 80))])
    assert results == expected


# What IDNA 2003 takes for another name, and its form in IDNA 2008.
DEVIATIONS = {
    'sharp-s': ('faß.de', 'xn--fa-hia.de'),
    'sharp-s-in-upper-case': ('FAẞ.DE', 'xn--fa-hia.de'),
    'sharp-s-in-full-width': ('\uff46aß.de', 'xn--fa-hia.de'),
    'sharp-s-in-the-last-label': ('a.ß', 'a.xn--zca'),
    'sharp-s-and-a-final-dot': ('faß.de.', 'xn--fa-hia.de'),
    'sharp-s-and-dots': ('faß\u3002bücher\uff61', 'xn--fa-hia.xn--bcher-kva'),
    'sharp-s-and-an-accent': ('café-ß\uff0ede', 'xn--caf--yna2d.de'),
    'sharp-s-decomposed': ('cafe\u0301-ß.de', 'xn--caf--yna2d.de'),
    'sharp-s-beside-an-underscore': ('_a.faß.de', '_a.xn--fa-hia.de'),
    'sharp-s-beside-an-encoded-label': ('XN--BCHER-KVA.ß', 'xn--bcher-kva.xn--zca'),
    'final-sigma': ('βόλος.com', 'xn--nxasmm1c.com'),
    'final-sigma-and-another': ('ΒΌΛΟς.com', 'xn--nxasmm1c.com'),
    'non-joiner': ('نامه\u200cای.com', 'xn--mgba3gch31f060k.com'),
    'joiner': ('ශ්\u200dරී.com', 'xn--10cl1a0b660p.com'),
    'corrigendum-4': ('\U0002f868.de', 'xn--snl.de'),
}


@pytest.mark.parametrize('authority, expected', DEVIATIONS.values(), ids=DEVIATIONS)
@on_one_loop
async def test_a_name_that_idna_2003_takes_for_another_is_understood_by_idna_2008(
        authority, expected):
    asked = []
    script = Answering(OK)
    async with Server(script) as server:
        redirecting = Redirecting(server.port)
        async with pool(get_dns_resolver=resolver_to(ELSEWHERE, asked),
                        get_sock=redirecting) as request:
            for same in authority, expected:
                await get(request, f'http://{same}/')
    assert asked == [(expected, aiodnsresolver.TYPES.A)] * 2
    assert script.heads == [f'GET / HTTP/1.1\r\nhost: {expected}\r\n\r\n'.encode()] * 2
    assert script.connections == [0, 0]
    assert lowhaio.canonical_host(authority) == expected


@pytest.mark.parametrize('authority, expected', DEVIATIONS.values(), ids=DEVIATIONS)
@on_one_loop
async def test_without_the_package_it_is_refused_with_the_form_to_write(
        authority, expected, monkeypatch):
    monkeypatch.setitem(sys.modules, 'idna', None)
    asked = []
    async with pool(get_dns_resolver=resolver_to(ELSEWHERE, asked)) as request:
        with pytest.raises(HttpConnectionError) as caught:
            await request(b'GET', f'http://{authority}/SECRET')
    text = ('url must have as host a name that IDNA 2003 does not take for another one, got '
            f'{authority!r}: write {expected!r}, or install the package idna')
    assert str(caught.value) == f'GET, refused: {text}'
    assert type(caught.value.__cause__) is ValueError
    assert isinstance(caught.value.__cause__.__cause__, ImportError)
    assert asked == []
    with pytest.raises(ValueError, match=re.escape(text)):
        lowhaio.canonical_host(authority)


@pytest.mark.parametrize(
    'authority', ['☃ß.de', 'ß' * 63 + '.de', '☃\u200d.de', '[::1%ß]', '[ß]'])
@pytest.mark.parametrize('is_installed', [True, False])
@on_one_loop
async def test_a_name_that_idna_2008_forbids_is_refused(authority, is_installed, monkeypatch):
    if not is_installed:
        monkeypatch.setitem(sys.modules, 'idna', None)
    async with pool() as request:
        with pytest.raises(HttpConnectionError) as caught:
            await request(b'GET', f'http://{authority}/')
    what = f'{authority[:60]!r}'
    assert str(caught.value) == 'GET, refused: url must have as host a name that ' + (
        f'IDNA 2008 allows, got {what}' if is_installed else
        f'IDNA 2003 does not take for another one, got {what}: install the package idna')
    assert type(caught.value.__cause__) is ValueError


@pytest.mark.parametrize('host, expected', [
    ('Example.COM.', 'example.com'), ('BÜCHER.de', 'xn--bcher-kva.de'), ('127.0.0.1', '127.0.0.1'),
    ('[::0:1]', '::1'), ('[FE80::1%25a]', 'fe80::1%a'), ('☃.net', 'xn--n3h.net'),
])
@pytest.mark.parametrize('is_installed', [True, False])
def test_all_other_hosts_have_one_form_whatever_is_installed(
        host, expected, is_installed, monkeypatch):
    if not is_installed:
        monkeypatch.setitem(sys.modules, 'idna', None)
    assert lowhaio.canonical_host(host) == expected


def test_nothing_of_idna_is_imported_before_such_a_name_comes():
    code = ('import sys; from lowhaio import canonical_host; canonical_host("bücher.de"); '
            'print("idna" in sys.modules); canonical_host("faß.de"); print("idna" in sys.modules)')
    printed = subprocess.run(
        [sys.executable, '-c', code], check=True, env={**os.environ, 'PYTHONPATH': str(HERE)},
        stdout=subprocess.PIPE, text=True, timeout=PATIENCE).stdout
    assert printed.split() == ['False', 'True']


@on_loops
async def test_a_zone_that_there_is_not_fails_to_connect():
    async with pool() as request:
        with pytest.raises(HttpConnectionError) as caught:
            await request(b'GET', 'http://[fe80::1%25lowhaio]:81/SECRET')
    assert str(caught.value).startswith(
        'GET http://[fe80::1%lowhaio]:81: connecting failed: fe80::1%lowhaio: OSError: ')
    assert type(caught.value.__cause__) is OSError


@on_loops
async def test_the_default_tls_offers_http_1_1_alone():
    async def script(peer):
        protocols.append(peer.writer.get_extra_info('ssl_object').selected_alpn_protocol())
        await peer.read_head()
        await peer.send(OK)

    protocols = []
    server_context, client_context, _ = certificates_for_what_is_sent()
    async with Server(script, server_context) as server, \
            pool(get_ssl_context=lambda: client_context) as request:
        assert (await get(request, server.url))[2] == b'ok'
    assert protocols == ['http/1.1']


@on_loops
async def test_the_spellings_of_an_origin_share_its_connections():
    script = Answering(OK)
    async with Server(script) as server, \
            pool(get_dns_resolver=resolver_to(IPv4Address('127.0.0.1'))) as request:
        for spelling in ('http://bücher.example', 'HTTP://BÜCHER.Example.',
                         'hTTp://xn--bcher-kva.EXAMPLE', 'http://bücher\uff0eexample'):
            await get(request, f'{spelling}:{server.port}')
        for spelling in ('http://127.0.0.1', 'http://127.0.0.1.', 'http://１２７.0.0.1'):
            await get(request, f'{spelling}:{server.port}')
    assert script.connections == [0, 0, 0, 0, 1, 1, 1]


@functools.cache
def certificates_for_what_is_sent():
    """A server's context, a client's that trusts it, and the server names that were sent."""
    authority = trustme.CA()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(
        'localhost', '127.0.0.1', '::1', 'xn--bcher-kva.example', 'xn--fa-hia.example',
    ).configure_cert(server_context)
    client_context = default_of('get_ssl_context')()
    authority.configure_trust(client_context)
    server_names = []
    server_context.set_alpn_protocols(['h2', 'http/1.1'])
    server_context.sni_callback = lambda sock, name, context: server_names.append(name)
    return server_context, client_context, server_names


@on_loops
async def test_a_host_has_one_form_for_tls_too_and_an_address_is_no_server_name():
    server_context, client_context, server_names = certificates_for_what_is_sent()
    server_names.clear()
    script = Answering(OK)
    redirecting = []
    async with Server(script, server_context) as server:
        for authority in ('BÜCHER.example.', 'faß.example', 'localhost:443', 'LocalHost.:8443',
                          '127.0.0.1', '127.0.0.1.:80', '[::1]', f'[::1%25{ZONE}]'):
            redirecting.append(Redirecting(server.port))
            async with pool(get_dns_resolver=resolver_to(ELSEWHERE), get_sock=redirecting[-1],
                            get_ssl_context=lambda: client_context) as request:
                await get(request, f'HTTPS://{authority}')
    hosts = ['xn--bcher-kva.example', 'xn--fa-hia.example', 'localhost', 'localhost:8443',
             '127.0.0.1', '127.0.0.1:80', '[::1]', '[::1]']
    assert script.heads == [f'GET / HTTP/1.1\r\nhost: {host}\r\n\r\n'.encode() for host in hosts]
    assert server_names == ['xn--bcher-kva.example', 'xn--fa-hia.example', 'localhost',
                            'localhost', None, None, None, None]
    assert [told for each in redirecting for _, told in each.told] == [
        ('192.0.2.1', 443), ('192.0.2.1', 443), ('192.0.2.1', 443), ('192.0.2.1', 8443),
        ('127.0.0.1', 443), ('127.0.0.1', 80), ('::1', 443, 0, 0), ('::1', 443, 0, ZONE_INDEX)]


# What follows the authority, `params`, and the request target.
TARGETS = {
    'nothing': ('', (), '/'),
    'slash': ('/', (), '/'),
    'query-without-path': ('?a', (), '/?a'),
    'empty-query': ('/?', (), '/?'),
    'empty-query-without-path': ('?', (), '/?'),
    'fragment': ('/a?b#c?d/e#f', (), '/a?b'),
    'fragment-without-path': ('#c', (), '/'),
    'fragment-with-a-lone-surrogate': ('/#\ud800', (), '/'),
    'dot-segments': ('/a/../b/./c', (), '/a/../b/./c'),
    'slashes': ('//a///b//', (), '//a///b//'),
    'a-url': ('/http://b/?http://c', (), '/http://b/?http://c'),
    'case': ('/A%2f%2Fa', (), '/A%2f%2Fa'),
    'encoded-unreserved': ('/%41%7e%2D', (), '/%41%7e%2D'),
    'encoded-control-characters': ('/%00%0d%0A', (), '/%00%0d%0A'),
    'percent-alone': ('/%', (), '/%25'),
    'percent-and-one-digit': ('/%a', (), '/%25a'),
    'percent-and-no-hex': ('/%g1%1g?%zz', (), '/%25g1%251g?%25zz'),
    'percent-twice': ('/%%41', (), '/%25%41'),
    'percent-and-full-width-digits': ('/%４１', (), '/%25%EF%BC%94%EF%BC%91'),
    'plus-and-space': ('/a+b c?d+e f', (), '/a+b%20c?d+e%20f'),
    'backslash': ('/\\..\\', (), '/%5C..%5C'),
    'not-ascii': ('/ä?ö=€&\U0001f600', (), '/%C3%A4?%C3%B6=%E2%82%AC&%F0%9F%98%80'),
    'line-separators': ('/\u2028\u2029\u00a0', (), '/%E2%80%A8%E2%80%A9%C2%A0'),
    'semicolons': ('/a;b?c;d', (), '/a;b?c;d'),
    'at-and-colon': ('/a@b:c?d@e:f', (), '/a@b:c?d@e:f'),
    'question-marks': ('/??a?b', (), '/??a?b'),
    'long': ('/' + 'a%41ä' * 5000, (), '/' + 'a%41%C3%A4' * 5000),

    'params': ('/', {'a': 'b'}, '/?a=b'),
    'params-without-path': ('', {'a': 'b'}, '/?a=b'),
    'params-pairs': ('/', (('a', 'b'), ('c', 'd'), ('a', 'e')), '/?a=b&c=d&a=e'),
    'params-list': ('/', [('b', '1'), ('a', '2')], '/?b=1&a=2'),
    'params-sequence-as-value': ('/', {'a': ['b', 'c'], 'd': ()}, '/?a=b&a=c'),
    'params-encoded': ('/', {'ä b': '&=+%/?#\r\n'}, '/?%C3%A4+b=%26%3D%2B%25%2F%3F%23%0D%0A'),
    'params-bytes': ('/', {'a': b'\xff', b'b': 'c', b'd': [b'e']}, '/?a=%FF&b=c&d=e'),
    'params-numbers': ('/', {'a': 1, 'b': None}, '/?a=1&b=None'),
    'params-after-a-query': ('/p?x', {'a': 'b'}, '/p?x&a=b'),
    'params-after-an-empty-query': ('/p?', {'a': 'b'}, '/p?a=b'),
    'params-after-an-ampersand': ('/p?x&', {'a': 'b'}, '/p?x&a=b'),
    'params-after-an-encoded-question-mark': ('/p%3F', {'a': 'b'}, '/p%3F?a=b'),
    'params-before-a-fragment': ('/p?x#f', {'a': 'b'}, '/p?x&a=b'),
    'params-before-a-fragment-with-a-query': ('/p#f?x', {'a': 'b'}, '/p?a=b'),
    'params-empty-tuple': ('/p?x', (), '/p?x'),
    'params-empty-mapping': ('/p', {}, '/p'),
    'params-none': ('/p', None, '/p'),
}


@on_loops
async def test_the_target_is_what_the_caller_gave_with_only_the_illegal_encoded():
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        for suffix, params, _ in TARGETS.values():
            await get(request, server.origin + suffix, params=params)
    sent = {name: head.split(b' ')[1].decode()
            for name, head in zip(TARGETS, script.heads, strict=True)}
    assert sent == {name: target for name, (_, _, target) in TARGETS.items()}


@on_loops
async def test_each_printable_character_of_a_target_is_sent_or_encoded_as_rfc_3986_has_it():
    printable = string.ascii_letters + string.digits + string.punctuation + ' '
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        for character in printable:
            if character not in '#%':
                await get(request, f'{server.url}x{character}?x{character}x')
        sent = [head.split(b' ')[1].decode() for head in script.heads]
    # The sets of 3.3 and 3.4, by name: unreserved, sub-delims, and what each part adds.
    allowed = '-._~' "!$&'()*+,;=" ':@'
    encoded = [urllib.parse.quote(character, safe=allowed + '/?')
               for character in printable if character not in '#%']
    assert sent == [f'/x{character}?x{character}x' for character in encoded]


@on_loops
async def test_params_that_are_no_query_change_nothing():
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        await get(request, server.url + 'p', params={'a': []})
    assert script.heads[0].startswith(b'GET /p HTTP/1.1\r\n')


# What the caller gives as `headers`, and all that follows the request line, of `host: H`.
HEADERS = {
    'none': ((), b'host: H\r\n\r\n'),
    'one': (((b'a', b'b'),), b'host: H\r\na: b\r\n\r\n'),
    'order-case-and-duplicates': (
        ((b'X-b', b'1'), (b'x-A', b'2'), (b'X-B', b'3'), (b'x-b', b'1')),
        b'host: H\r\nX-b: 1\r\nx-A: 2\r\nX-B: 3\r\nx-b: 1\r\n\r\n'),
    'list-of-lists': ([[b'a', b'b'], [b'c', b'd']], b'host: H\r\na: b\r\nc: d\r\n\r\n'),
    'items-of-a-mapping': ({b'a': b'b', b'c': b'd'}.items(),
                           b'host: H\r\na: b\r\nc: d\r\n\r\n'),
    'host': (((b'host', b'other'),), b'host: other\r\n\r\n'),
    'host-in-its-place': (((b'a', b'b'), (b'HoSt', b'other:1'), (b'c', b'd')),
                          b'a: b\r\nHoSt: other:1\r\nc: d\r\n\r\n'),
    **{f'host-{value.decode()}': (((b'host', value),), b'host: %b\r\n\r\n' % value)
       for value in (b'a_b.example:8080', b'EXAMPLE.com.', b'127.0.0.1', b'[::1]:', b' a\t',
                     b'[2001:DB8::a]:65535', b'%2Frun%2Fdocker.sock', b"a~!$&'()*+;=b")},
    'names-like-host': (((b'x-host', b'1'), (b'hosts', b'2')),
                        b'host: H\r\nx-host: 1\r\nhosts: 2\r\n\r\n'),
    'value-empty': (((b'a', b''),), b'host: H\r\na: \r\n\r\n'),
    'value-spaces': (((b'a', b' \t b\t '),), b'host: H\r\na:  \t b\t \r\n\r\n'),
    'value-not-ascii': (((b'a', b'\x80\xff'),), b'host: H\r\na: \x80\xff\r\n\r\n'),
    'value-percent': (((b'a', b'%s%(b)d%%'),), b'host: H\r\na: %s%(b)d%%\r\n\r\n'),
    'upgrade': (((b'Upgrade', b'a'),), b'host: H\r\nUpgrade: a\r\n\r\n'),
    'content-length-0': (((b'Content-Length', b'0'),), b'host: H\r\nContent-Length: 0\r\n\r\n'),
    'content-length-with-zeros': (((b'content-length', b'0' * 20),),
                                  b'host: H\r\ncontent-length: %b\r\n\r\n' % (b'0' * 20)),
    'nothing-is-added': (((b'connection', b'keep-alive'), (b'accept', b'*/*')),
                         b'host: H\r\nconnection: keep-alive\r\naccept: */*\r\n\r\n'),
}


@pytest.mark.parametrize('http_version', [b'HTTP/1.1', b'HTTP/1.0'])
@on_loops
async def test_the_head_is_what_the_caller_gave_after_host(http_version):
    script = Answering(with_length(b'connection: keep-alive'))
    async with Server(script) as server, pool(http_version=http_version) as request:
        for headers, _ in HEADERS.values():
            await request(b'PUT', server.url, (), headers)
        field = f'host: 127.0.0.1:{server.port}'.encode()
    assert dict(zip(HEADERS, script.heads, strict=True)) == {
        name: b'PUT / %b\r\n' % http_version + rest.replace(b'host: H', field)
        for name, (_, rest) in HEADERS.items()}
    assert set(script.connections) == {0}


@pytest.mark.parametrize('values, connections', [
    ([], [0, 0]),
    ([b'keep-alive'], [0, 0]),
    ([b'close'], [0, 1]),
    ([b'a ,\tCLOSE , b'], [0, 1]),
    ([b'a', b'close', b'b'], [0, 1]),
    ([b'closed, x-close, close-x'], [0, 0]),
])
@on_loops
async def test_a_request_with_connection_close_is_the_last_of_its_connection(values, connections):
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        for _ in range(2):
            await get(request, server.url,
                      headers=tuple((b'Connection', value) for value in values))
    assert script.connections == connections


@on_loops
async def test_headers_may_come_from_a_generator():
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        await get(request, server.url, headers=((name, b'1') for name in (b'a', b'b')))
        await get(request, server.url, headers=(() for _ in ()))
        field = f'host: 127.0.0.1:{server.port}\r\n'.encode()
    assert script.heads == [b'GET / HTTP/1.1\r\n' + field + b'a: 1\r\nb: 1\r\n\r\n',
                            b'GET / HTTP/1.1\r\n' + field + b'\r\n']


@on_loops
async def test_a_field_may_come_from_an_iterator_or_is_refused():
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        with contextlib.suppress(HttpConnectionError):
            await get(request, server.url, headers=(map(str.encode, ('a', 'b')),))
            assert script.heads[0].endswith(b'\r\na: b\r\n\r\n')
        await get(request, server.url)
    assert script.heads[-1].startswith(b'GET / ')


@on_loops
async def test_each_byte_of_a_method_and_of_a_field_is_sent_or_refused():
    token = (string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~").encode()
    value = bytes({*range(256)} - {*range(0x20), 0x7f} | {0x09})
    places = {
        'method': (lambda byte: (byte, ()), token),
        'method-inside': (lambda byte: (b'a' + byte + b'b', ()), token),
        'name': (lambda byte: (b'GET', ((byte, b''),)), token),
        'name-inside': (lambda byte: (b'GET', ((b'a' + byte + b'b', b''),)), token),
        'value': (lambda byte: (b'GET', ((b'a', byte),)), value),
        'value-inside': (lambda byte: (b'GET', ((b'a', b'b' + byte + b'c'),)), value),
    }
    results = {}
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        field = f'host: 127.0.0.1:{server.port}\r\n'.encode()
        for place, (arguments, _) in places.items():
            sent = []
            for code in range(256):
                method, headers = arguments(bytes([code]))
                with contextlib.suppress(HttpConnectionError):
                    await get_as(request, method, server.url, headers)
                    sent.append(code)
                    lines = [b'%b: %b\r\n' % pair for pair in headers]
                    assert script.heads[-1] == b'%b / HTTP/1.1\r\n%b%b\r\n' % (
                        method, field, b''.join(lines))
            results[place] = bytes(sent)
    assert results == {place: bytes(sorted(allowed)) for place, (_, allowed) in places.items()}
    assert set(script.connections) == {0}


async def get_as(request, method, url, headers):
    _, _, body = await request(method, url, headers=headers)
    return await buffered(body)


# ------------------------------------------------------------------------------- the body


def of_length(length):
    return ((b'content-length', b'%d' % length),)


async def yielding(*chunks):
    """Yields chunks at once; waits at None, and raises what is an exception."""
    for chunk in chunks:
        if chunk is None:
            await asyncio.sleep(0)
        elif isinstance(chunk, BaseException):
            raise chunk
        else:
            yield chunk


async def mutating():
    chunk = bytearray(b'a' * 70_000)
    yield chunk
    chunk[:] = b'b' * 30_000
    yield chunk
    chunk.clear()


class Chunks:
    """An async iterator that is no generator; `__anext__` is a coroutine function."""

    def __init__(self, *chunks):
        self.chunks = list(chunks)

    def __aiter__(self):
        return self

    def take(self):
        if not self.chunks:
            raise StopAsyncIteration
        return self.chunks.pop(0)

    async def __anext__(self):
        return self.take()


class LateChunks(Chunks):
    async def __anext__(self):
        await asyncio.sleep(0)
        return self.take()


class EndingOnce(Chunks):
    """May not be asked again after its end."""

    has_ended = False

    def take(self):
        assert not self.has_ended
        self.has_ended = not self.chunks
        return super().take()


class FutureChunks(Chunks):
    """`__anext__` returns a future, which is done, or is soon."""

    def __anext__(self):
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        is_soon = len(self.chunks) % 2
        try:
            result = functools.partial(future.set_result, self.take())
        except StopAsyncIteration as end:
            result = functools.partial(future.set_exception, end)
        if is_soon:
            loop.call_soon(result)
        else:
            result()
        return future


class EndingAtOnce(FutureChunks):
    """`__anext__` itself raises, as an `async for` understands too."""

    def __anext__(self):
        if not self.chunks:
            raise StopAsyncIteration
        return super().__anext__()


class GeneratorChunks(Chunks):
    """`__anext__` returns a generator that can be awaited."""

    @types.coroutine
    def __anext__(self):
        yield
        return self.take()


class IteratorChunks(Chunks):
    """`__anext__` returns an awaitable whose steps are those of a plain iterator."""

    def __anext__(self):
        chunks = self

        class Steps:
            def __await__(self):
                return self

            def __iter__(self):
                return self

            def __next__(self):
                raise StopIteration(chunks.take())

        return Steps()


class Iterable:
    """Not an iterator: its `__aiter__` makes one."""

    async def __aiter__(self):
        yield b'ab'
        yield b'c'


class NoIterator:
    def __aiter__(self):
        return iter(())


def with_arguments(*args, **kwargs):
    return yielding(*args, *kwargs.values())


# The `body`, what else is passed, and what the server gets.
BODIES = {
    'streamed': (streamed(b'abc'), {}, b'abc'),
    'streamed-empty': (streamed(b''), {}, b''),
    'none-given': (empty_async_iterator, {}, b''),
    'generator': (lambda: yielding(b'a', b'bc'), {}, b'abc'),
    'generator-of-nothing': (lambda: yielding(), {}, b''),
    'generator-of-nothing-later': (lambda: yielding(None), {}, b''),
    'waiting-first': (lambda: yielding(None, b'a', None, None, b'bc', None), {}, b'abc'),
    'waiting-later': (lambda: yielding(b'a', None, b'bc', None), {}, b'abc'),
    'empty-chunks': (lambda: yielding(b'', b'', b'a', b'', bytearray(), b'bc', b''), {}, b'abc'),
    'empty-chunks-later': (lambda: yielding(b'', None, b'', b'a', None, b'', b'bc'), {}, b'abc'),
    'only-empty-chunks': (lambda: yielding(b'', memoryview(b''), b''), {}, b''),
    'bytearrays': (lambda: yielding(bytearray(b'a'), None, bytearray(b'bc')), {}, b'abc'),
    'memoryviews': (lambda: yielding(memoryview(b'xaxbx')[1::2], memoryview(b'c')), {}, b'abc'),
    'arrays': (lambda: yielding(array.array('H', [0x6161]), array.array('I', [0x62626262])), {},
               b'aabbbb'),
    'one-chunk-again-and-again': (mutating, {}, b'a' * 70_000 + b'b' * 30_000),
    'large-chunk': (lambda: yielding(b'x' * 1_000_000), {}, b'x' * 1_000_000),
    'large-chunk-later': (lambda: yielding(None, b'x' * 1_000_000), {}, b'x' * 1_000_000),
    'chunk-of-64-kib': (lambda: yielding(b'x' * 65536, b'y'), {}, b'x' * 65536 + b'y'),
    'many-chunks': (lambda: yielding(*[b'ab'] * 1000), {}, b'ab' * 1000),
    'iterator': (lambda: Chunks(b'a', b'', b'bc'), {}, b'abc'),
    'iterator-of-nothing': (Chunks, {}, b''),
    'iterator-waiting': (lambda: LateChunks(b'a', b'', b'bc'), {}, b'abc'),
    'iterator-that-ends-once': (lambda: EndingOnce(b'a', b'bc'), {}, b'abc'),
    'iterator-of-nothing-that-ends-once': (EndingOnce, {}, b''),
    'futures': (lambda: FutureChunks(b'a', b'', b'bc'), {}, b'abc'),
    'futures-soon': (lambda: FutureChunks(b'a', b'b', b'', b'c'), {}, b'abc'),
    'future-of-nothing': (FutureChunks, {}, b''),
    'futures-and-an-end-at-once': (lambda: EndingAtOnce(b'a', b'bc'), {}, b'abc'),
    'iterable': (Iterable, {}, b'abc'),
    'args': (with_arguments, {'body_args': (b'a', b'bc')}, b'abc'),
    'args-in-a-list': (with_arguments, {'body_args': [b'a', b'bc']}, b'abc'),
    'kwargs': (with_arguments, {'body_kwargs': {'x': b'a', 'y': b'bc'}}, b'abc'),
    'kwargs-pairs': (with_arguments, {'body_kwargs': (('x', b'a'), ('y', b'bc'))}, b'abc'),
    'args-and-kwargs': (with_arguments, {'body_args': (b'a',), 'body_kwargs': (('y', b'bc'),)},
                        b'abc'),
}


@on_loops
async def test_a_body_is_the_chunks_that_its_function_yields():
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        for body, more, expected in BODIES.values():
            await request(b'PUT', server.url, headers=of_length(len(expected)), body=body,
                          **more)
    assert dict(zip(BODIES, script.bodies, strict=True)) == {
        name: expected for name, (_, _, expected) in BODIES.items()}
    # Each was sent whole, so all went over one connection.
    assert set(script.connections) == {0}


@pytest.mark.parametrize('body', [
    pytest.param(EndingAtOnce, id='the-end-at-once'),
    pytest.param(lambda: GeneratorChunks(b'abc'), id='generator'),
    pytest.param(lambda: IteratorChunks(b'abc'), id='plain-iterator'),
])
@on_loops
async def test_a_body_may_be_whatever_an_async_for_takes(body):
    expected = b''.join([chunk async for chunk in body()])
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        await request(b'PUT', server.url, headers=of_length(len(expected)), body=body)
    assert script.bodies == [expected]


@on_loops
async def test_a_body_coded_by_the_caller_is_sent_as_it_is():
    heads, bodies = [], []

    async def script(peer):
        heads.append(await peer.read_head())
        bodies.append(await peer.reader.readuntil(b'\r\n0\r\n\r\n'))
        await peer.send(OK)
        heads.append(await peer.read_head())
        await peer.send(OK)

    async with Server(script) as server, pool() as request:
        await request(b'PUT', server.url, headers=((b'Transfer-Encoding', b'Chunked'),),
                      body=lambda: yielding(b'3\r\nabc', b'\r\n0\r\n', None, b'\r\n'))
        await request(b'GET', server.url)
        field = f'host: 127.0.0.1:{server.port}\r\n'.encode()
    assert heads == [b'PUT / HTTP/1.1\r\n' + field + b'Transfer-Encoding: Chunked\r\n\r\n',
                     b'GET / HTTP/1.1\r\n' + field + b'\r\n']
    assert bodies == [b'3\r\nabc\r\n0\r\n\r\n']
    assert len(server.peers) == 1


@on_loops
async def test_chunked_may_be_the_last_of_several_codings():
    async def script(peer):
        heads.append(await peer.read_head())
        await peer.reader.readuntil(b'0\r\n\r\n')
        await peer.send(OK)

    heads = []
    async with Server(script) as server, pool(keep_alive_timeout=0) as request:
        for value in (b'gzip, chunked', b'gzip,CHUNKED \t'):
            await request(b'PUT', server.url, headers=((b'transfer-encoding', value),),
                          body=streamed(b'0\r\n\r\n'))
            assert b'\r\ntransfer-encoding: ' + value + b'\r\n' in heads[-1]


class Uploads:
    """A script that keeps all that each connection sends until the client closes it."""

    def __init__(self):
        self.received = []

    async def __call__(self, peer):
        self.received.append(await peer.closed())

    async def body(self):
        """What came after a head over the one connection, once that is closed, or None."""
        await until(lambda: self.received)
        assert len(self.received) == 1
        head, end, body = self.received[0].partition(b'\r\n\r\n')
        return body if end else head or None


def at(server, text, method='PUT'):
    """The whole message of an error of a connection to a server."""
    return f'{method} {server.origin} (peer 127.0.0.1:{server.port}), {text}'


NO_ITERATOR = ('body must return an async iterator of bytes, as an async function that yields '
               'does, got ')

NO_FUNCTION = ('body must be a function that returns an async iterator of bytes, as '
               'streamed(data) is, got ')

NO_BODIES = {
    'none': (None, NO_FUNCTION + 'NoneType'),
    'bytes': (b'abc', NO_FUNCTION + 'bytes'),
    'returns-none': (lambda: None, NO_ITERATOR + 'NoneType'),
    'returns-bytes': (lambda: b'abc', NO_ITERATOR + 'bytes'),
    'returns-list': (lambda: [b'abc'], NO_ITERATOR + 'list'),
    'returns-iterator': (lambda: iter([b'abc']), NO_ITERATOR + 'list_iterator'),
    'returns-coroutine': (forever, NO_ITERATOR + 'coroutine'),
    'returns-an-iterable-of-no-iterator': (NoIterator, ''),
    'wants-an-argument': (lambda a: yielding(a), ''),
}


@on_loops
async def test_a_body_that_is_no_function_of_an_async_iterator_is_a_connection_error():
    # A coroutine that is not closed would warn, when it is collected, that it was not awaited.
    for name, (body, text) in NO_BODIES.items():
        script = Uploads()
        async with Server(script) as server, pool() as request:
            with pytest.raises(HttpConnectionError) as caught:
                await request(b'PUT', server.url, headers=of_length(3), body=body)
            assert await script.body() is None
        assert type(caught.value) is HttpConnectionError
        assert type(caught.value.__cause__) is TypeError, name
        assert str(caught.value) == at(
            server, f'the request body: TypeError: {text or caught.value.__cause__}')


@pytest.mark.parametrize('chunk, kind', [
    ('c', 'str'), (5, 'int'), ([b'c'], 'list'),
    # What is false is no empty chunk.
    ('', 'str'), (0, 'int'), ([], 'list'), (None, 'NoneType'),
])
@on_loops
async def test_a_chunk_that_is_no_bytes_is_an_error(chunk, kind):
    async def body(*first):
        async for good in yielding(*first):
            yield good
        yield chunk

    for first, sent in (((), None), ((None,), b''), ((b'ab',), b'ab')):
        script = Uploads()
        async with Server(script) as server, pool() as request:
            with pytest.raises(HttpError) as caught:
                await request(b'PUT', server.url, headers=of_length(3), body=body,
                              body_args=first)
            assert await script.body() == sent
        assert type(caught.value) is (HttpDataError if first else HttpConnectionError)
        assert type(caught.value.__cause__) is TypeError
        assert str(caught.value) == at(server, 'the request body: TypeError: the body must '
                                       f'yield bytes, got {kind}')


NOTHING = ': it yielded nothing, as an iterator that was used before'

AS_CHUNKS = ((b'transfer-encoding', b'chunked'),)
TOO_EARLY = 'the body ended too early, but transfer-encoding chunked needs its last chunk'


def not_chunked(expected):
    return ('the body must be encoded as transfer-encoding chunked says: expected '
            f'{expected}, but it yielded something else')


# What is declared, what the body yields (None: it waits), the error, and all that is sent.
WRONG_LENGTHS = {
    'nothing-for-something': (
        of_length(5), (), HttpConnectionError,
        'the body ended 5 bytes short of its content-length of 5' + NOTHING, None),
    'only-empty-chunks-for-something': (
        of_length(5), (b'', b''), HttpConnectionError,
        'the body ended 5 bytes short of its content-length of 5' + NOTHING, None),
    'nothing-later-for-something': (
        of_length(5), (None,), HttpDataError,
        'the body ended 5 bytes short of its content-length of 5' + NOTHING, b''),
    'too-few': (
        of_length(5), (b'ab', b'cd'), HttpDataError,
        'the body ended 1 bytes short of its content-length of 5', b'abcd'),
    'too-few-later': (
        of_length(5), (b'ab', None), HttpDataError,
        'the body ended 3 bytes short of its content-length of 5', b'ab'),
    'too-many-in-the-first-chunk': (
        of_length(1), (b'abc',), HttpConnectionError,
        'the body yielded more than its content-length of 1', None),
    'too-many-in-the-first-chunk-after-a-wait': (
        of_length(1), (None, b'abc'), HttpDataError,
        'the body yielded more than its content-length of 1', b''),
    'too-many-in-a-later-chunk': (
        of_length(3), (b'ab', b'cd'), HttpDataError,
        'the body yielded more than its content-length of 3', b'ab'),
    'one-chunk-too-many': (
        of_length(2), (b'ab', b'', b'c'), HttpDataError,
        'the body yielded more than its content-length of 2', b'ab'),
    'one-large-chunk-too-many': (
        of_length(2), (b'ab', None, b'c' * 100_000), HttpDataError,
        'the body yielded more than its content-length of 2', b'ab'),
    'something-for-zero': (
        of_length(0), (b'a',), HttpConnectionError,
        'the body yielded more than its content-length of 0', None),
    'something-for-nothing': (
        (), (b'a',), HttpConnectionError,
        'the body yielded bytes, but headers has no content-length or transfer-encoding', None),
    'something-for-nothing-later': (
        (), (None, b'a'), HttpDataError,
        'the body yielded bytes, but headers has no content-length or transfer-encoding', b''),
    'nothing-for-a-coding': (
        ((b'transfer-encoding', b'chunked'),), (), HttpConnectionError,
        'the body ended without a byte, but transfer-encoding chunked needs its last chunk',
        None),
    'nothing-for-a-coding-later': (
        ((b'transfer-encoding', b'chunked'),), (None, b''), HttpDataError,
        'the body ended without a byte, but transfer-encoding chunked needs its last chunk',
        b''),
    'content-for-a-coding': (
        AS_CHUNKS, (b'hello',), HttpConnectionError, not_chunked('a chunk-size line'), None),
    'content-for-a-coding-that-begins-like-a-chunk': (
        AS_CHUNKS, (b'bad', b' idea\r\n'), HttpDataError, not_chunked('a chunk-size line'),
        b'bad'),
    'a-request-for-a-coding': (
        AS_CHUNKS, (b'0\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n',), HttpConnectionError,
        not_chunked('nothing after the last chunk'), None),
    'a-request-after-a-coding': (
        AS_CHUNKS, (b'2\r\nok\r\n', b'0\r\n\r\n', b'', b'GET / HTTP/1.1\r\n'), HttpDataError,
        not_chunked('nothing after the last chunk'), b'2\r\nok\r\n0\r\n\r\n'),
    'a-coding-without-its-end': (
        AS_CHUNKS, (b'2\r\nok\r\n',), HttpDataError, TOO_EARLY, b'2\r\nok\r\n'),
    'a-coding-without-its-end-later': (
        AS_CHUNKS, (None, b'2\r\nok\r\n0\r\na: b\r\n'), HttpDataError, TOO_EARLY,
        b'2\r\nok\r\n0\r\na: b\r\n'),
    'an-error-at-once': (
        of_length(3), (LookupError('why'),), HttpConnectionError, 'LookupError: why', None),
    'an-error-after-a-wait': (
        of_length(3), (None, LookupError('why')), HttpDataError, 'LookupError: why', b''),
    'an-error-after-a-chunk': (
        of_length(3), (b'ab', LookupError('why')), HttpDataError, 'LookupError: why', b'ab'),
    'an-error-without-text': (
        of_length(3), (LookupError(),), HttpConnectionError, 'LookupError', None),
}


@on_loops
async def test_a_body_that_is_not_what_was_declared_is_an_error_and_its_excess_is_not_sent():
    results, expected = {}, {}
    for name, (headers, chunks, kind, text, sent) in WRONG_LENGTHS.items():
        script = Uploads()
        async with Server(script) as server, pool() as request:
            with pytest.raises(HttpError) as caught:
                await request(b'PUT', server.url, headers=headers, body=yielding,
                              body_args=chunks)
            error = caught.value
            raised = [chunk for chunk in chunks if isinstance(chunk, Exception)]
            results[name] = (type(error), str(error), type(error.__cause__),
                             error.__cause__ in raised, error.reused, error.response_started,
                             await script.body())
            expected[name] = (kind, at(server, f'the request body: {text}'),
                              type(raised[0]) if raised else ValueError,
                              bool(raised), False, False, sent)
    assert results == expected


# Bodies that are encoded, and those that are not: what was expected in place of what came, or None
# if they end too early.
CODED_BODIES = {
    'a chunk': b'5\r\nhello\r\n0\r\n\r\n',
    'chunks': b'2\r\nok\r\nA\r\n0123456789\r\n00\r\n\r\n',
    'no chunk': b'0\r\n\r\n',
    'a size of 16 digits': b'0000000000000002\r\nok\r\n0000000000000000\r\n\r\n',
    'content that looks like framing': b'9\r\n\r\n0\r\n\r\n\r\n\r\n0\r\n\r\n',
    'extensions': b'2;a\r\nok\r\n0;b="c d";e=\x80\r\n\r\n',
    'trailers': b'2\r\nok\r\n0\r\na: b\r\nX-C:\td \r\ne:\r\n\r\n',
}
SIZE, CRLF, TRAILER = 'a chunk-size line', 'CRLF after the chunk', 'a trailer or the empty line'
AFTER = 'nothing after the last chunk'
NOT_CODED_BODIES = {
    'no size': (b'\r\nok\r\n0\r\n\r\n', SIZE),
    'a size that is not hex': (b'0x2\r\nok\r\n0\r\n\r\n', SIZE),
    'a size with a sign': (b'+2\r\nok\r\n0\r\n\r\n', SIZE),
    'a size of 17 digits': (b'00000000000000002\r\nok\r\n0\r\n\r\n', SIZE),
    'a space after the size': (b'2 \r\nok\r\n0\r\n\r\n', SIZE),
    'a space before the size': (b' 2\r\nok\r\n0\r\n\r\n', SIZE),
    'LF after the size': (b'2\nok\r\n0\r\n\r\n', SIZE),
    'CR after the size': (b'2\rok\r\n0\r\n\r\n', SIZE),
    'NUL in an extension': (b'2;\0\r\nok\r\n0\r\n\r\n', SIZE),
    'CR in an extension': (b'2;a\rb\r\nok\r\n0\r\n\r\n', SIZE),
    'LF in an extension': (b'2;a\nb\r\nok\r\n0\r\n\r\n', SIZE),
    'content longer than the size': (b'2\r\nokay\r\n0\r\n\r\n', CRLF),
    'content shorter than the size': (b'4\r\nok\r\n0\r\n\r\n', CRLF),
    'LF after the content': (b'2\r\nok\n0\r\n\r\n', CRLF),
    'two CRLF after the content': (b'2\r\nok\r\n\r\n0\r\n\r\n', SIZE),
    'a second size that is none': (b'2\r\nok\r\nx\r\nok\r\n0\r\n\r\n', SIZE),
    'LF at the end': (b'2\r\nok\r\n0\r\n\n', TRAILER),
    'a trailer without a colon': (b'0\r\nab\r\n\r\n', TRAILER),
    'a space before the colon': (b'0\r\na : b\r\n\r\n', TRAILER),
    'a folded trailer': (b'0\r\na: b\r\n c\r\n\r\n', TRAILER),
    'LF after a trailer': (b'0\r\na: b\n\r\n', TRAILER),
    'NUL in a trailer': (b'0\r\na: \0\r\n\r\n', TRAILER),
    'CR in a trailer': (b'0\r\na: b\rc\r\n\r\n', TRAILER),
    'a line end after the end': (b'0\r\n\r\n\r\n', AFTER),
    'a second end': (b'2\r\nok\r\n0\r\n\r\n0\r\n\r\n', AFTER),
    'a chunk after the end': (b'0\r\n\r\n2\r\nok\r\n', AFTER),
    'an end in a size': (b'5', None),
    'an end in an extension': (b'5;a', None),
    'an end after a size': (b'5\r\n', None),
    'an end in the content': (b'5\r\nhel', None),
    'an end after the content': (b'5\r\nhello\r', None),
    'an end between chunks': (b'5\r\nhello\r\n', None),
    'an end after the last size': (b'5\r\nhello\r\n0\r\n', None),
    'an end in a trailer': (b'0\r\na: b', None),
    'an end in the name of a trailer': (b'0\r\na', None),
    'an end in the last line end': (b'0\r\na: b\r\n\r', None),
}
YIELDED = {
    'whole': lambda body: [body],
    'in bytes': lambda body: [body[index:index + 1] for index in range(len(body))],
    'in lines': re.compile(rb'[^\n]*\n|[^\n]+').findall,
    'in sevens': lambda body: [body[index:index + 7] for index in range(0, len(body), 7)],
}


@pytest.mark.parametrize('cut', YIELDED.values(), ids=YIELDED)
@on_loops
async def test_a_coded_body_is_sent_as_it_is(cut):
    async def script(peer):
        for body in CODED_BODIES.values():
            await peer.read_head()
            received.append(await peer.read(len(body)))
            await peer.send(OK)

    received = []
    async with Server(script) as server, pool() as request:
        for body in CODED_BODIES.values():
            await get(request, server.url, headers=AS_CHUNKS, body=yielding, body_args=cut(body))
        assert len(server.peers) == 1
    assert received == list(CODED_BODIES.values())


@on_loops
async def test_other_codings_may_be_before_chunked():
    async def script(peer):
        heads.append(await peer.read_head())
        assert await peer.read(5) == b'0\r\n\r\n'
        await peer.send(OK)

    heads = []
    values = [b'gzip, chunked', b' GZIP\t,\tCHUNKED ', b'a;b=c;d="e, chunked", chunked',
              b'a ; b = "\\"c" , chunked', b'chunkedx, x-chunked, chunked', b'identity,chunked']
    async with Server(script) as server:
        for value in values:
            async with pool() as request:
                await get(request, server.url, headers=((b'transfer-encoding', value),),
                          body=streamed(b'0\r\n\r\n'))
    assert [head.split(b'encoding: ')[1] for head in heads] == [
        value + b'\r\n\r\n' for value in values]


@pytest.mark.parametrize('cut', YIELDED.values(), ids=YIELDED)
@on_loops
async def test_a_body_that_is_not_coded_as_its_field_says_is_not_sent_to_its_end(cut):
    results, expected = {}, {}
    for name, (body, what) in NOT_CODED_BODIES.items():
        script = Uploads()
        chunks = cut(body)
        async with Server(script) as server, pool() as request:
            with pytest.raises(HttpError) as caught:
                await request(b'PUT', server.url, headers=AS_CHUNKS, body=yielding,
                              body_args=chunks)
            sent = await script.body()
        text = TOO_EARLY if what is None else not_chunked(what)
        results[name] = str(caught.value), type(caught.value.__cause__)
        expected[name] = at(server, f'the request body: {text}'), ValueError
        # Nothing of the chunk that is wrong is sent.
        assert sent is None if what and len(chunks) == 1 else body.startswith(sent or b'')
        assert what is None or sent != body
    assert results == expected


@on_loops
async def test_a_line_of_a_coded_body_that_does_not_end_is_an_error():
    async with Server(Uploads()) as server, pool() as request:
        with pytest.raises(HttpDataError) as caught:
            await request(b'PUT', server.url, headers=AS_CHUNKS, body=yielding,
                          body_args=[b'2;', *[b'a' * 1024] * 20])
    assert str(caught.value) == at(server, f'the request body: {not_chunked(SIZE)}')


@pytest.mark.parametrize('error', [
    ConnectionResetError('why'), BrokenPipeError('why'), EOFError('why')])
@on_loops
async def test_a_body_that_fails_on_a_connection_of_its_own_is_no_end_of_ours(error):
    async with Server(Uploads()) as server, pool() as request:
        with pytest.raises(HttpDataError) as caught:
            await request(b'PUT', server.url, headers=of_length(3), body=yielding,
                          body_args=(b'ab', error))
    assert caught.value.__cause__ is error
    assert type(caught.value) is HttpDataError


@on_loops
async def test_a_body_that_fails_before_a_byte_is_sent_costs_a_reused_connection():
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        await get(request, server.url)
        with pytest.raises(HttpConnectionError) as caught:
            await request(b'PUT', server.url, headers=of_length(1))
        assert str(caught.value) == at(
            server, 'the request body: the body ended 1 bytes short of its content-length of 1'
            + NOTHING)
        assert (caught.value.reused, caught.value.response_started) == (True, False)
        await get(request, server.url)
    assert script.connections == [0, 1]


# ------------------------------------------------------------------------------- sending


class Connected(socket.socket):
    """One end of a pair, which is connected already."""

    def connect(self, address):
        pass


# What the body yields, and what the server reads; H is the head.
READS = {
    'no-body': ((), [b'H']),
    'one-chunk': ((b'abc',), [b'Habc']),
    'after-an-empty-chunk': ((b'', b'abc'), [b'Habc']),
    'two-chunks': ((b'abc', b'def'), [b'Habc', b'def']),
    'a-wait-between': ((bytearray(b'abc'), None, b'def'), [b'Habc', b'def']),
    'a-wait-before': ((None, b'abc'), [b'H', b'abc']),
    '64-kib': ((b'x' * 65536,), [b'H' + b'x' * 65536]),
    'more-than-64-kib': ((b'x' * 65537,), [b'H' + b'x' * 65536, b'x']),
}


@on_loops
async def test_the_head_and_a_first_chunk_that_is_there_arrive_in_one_read():
    results, expected = {}, {}
    loop = asyncio.get_running_loop()

    async def server(sock, number):
        received = [await loop.sock_recv(sock, 2 ** 20) for _ in range(number)]
        await loop.sock_sendall(sock, OK)
        return received

    for name, (chunks, reads) in READS.items():
        # Of a datagram socket one read returns what one send sent.
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        theirs.setblocking(False)
        length = sum(len(chunk) for chunk in chunks if chunk is not None)
        head = b'PUT / HTTP/1.1\r\nhost: 192.0.2.1\r\ncontent-length: %d\r\n\r\n' % length
        expected[name] = [read.replace(b'H', head) for read in reads]
        with theirs, Connected(fileno=ours.detach()) as sock:
            async with pool(get_sock=lambda family, sock=sock: sock) as request:
                results[name], _ = await asyncio.gather(
                    server(theirs, len(reads)),
                    request(b'PUT', 'http://192.0.2.1/', headers=of_length(length),
                            body=yielding, body_args=chunks))
    assert results == expected


@pytest.mark.parametrize('version', [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3],
                         ids=['1.2', '1.3'])
@on_loops
async def test_the_head_and_a_first_chunk_that_is_there_arrive_in_one_record_of_tls(version):
    server_context, client_context, _ = certificates_for_what_is_sent()
    lengths = []  # of the records from the client

    async def forward(peer):
        reader, writer = await asyncio.open_connection('127.0.0.1', tls_server.port)

        async def back():
            while data := await reader.read(65536):
                await peer.send(data)

        backwards = asyncio.create_task(back())
        try:
            while True:
                header = await peer.read(5)
                record = await peer.read(int.from_bytes(header[3:], 'big'))
                lengths.append(len(record))
                writer.write(header + record)
        finally:
            backwards.cancel()
            writer.transport.abort()

    client_context.maximum_version = version
    script = Answering(OK)
    try:
        async with Server(script, server_context) as tls_server, Server(forward) as forwarder, \
                pool(get_ssl_context=lambda: client_context) as request:
            url = f'https://127.0.0.1:{forwarder.port}/'
            await get(request, url)
            lengths.clear()  # those of the handshake, and of the first request
            await request(b'PUT', url, headers=of_length(3), body=streamed(b'abc'))
            assert len(lengths) == 1
            assert lengths[0] > len(script.heads[-1]) + 3
            await request(b'PUT', url, headers=of_length(3), body=lambda: yielding(None, b'abc'))
            assert len(lengths) == 3
            assert script.bodies == [b'', b'abc', b'abc']
            assert script.connections == [0, 0, 0]
    finally:
        client_context.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED


@on_loops
async def test_a_body_that_waits_first_does_not_hold_the_head_back():
    async def script(peer):
        await peer.read_head()
        got_head.set()
        assert await peer.read(3) == b'abc'
        await peer.send(OK)

    async def body():
        await got_head.wait()
        yield b'abc'

    got_head = asyncio.Event()
    async with Server(script) as server, pool() as request:
        code, _, _ = await request(b'PUT', server.url, headers=of_length(3), body=body)
    assert code == b'200'


@on_loops
async def test_a_body_is_asked_for_a_chunk_when_the_one_before_has_arrived():
    async def script(peer):
        await peer.read_head()
        for _ in range(3):
            arrived.append(await peer.read(100_000))
        await peer.send(OK)

    async def body():
        for number in range(3):
            yield b'x' * 100_000
            await until(lambda number=number: len(arrived) > number)

    arrived = []
    async with Server(script) as server, pool() as request:
        code, _, _ = await request(b'PUT', server.url, headers=of_length(300_000), body=body)
    assert code == b'200'


class Body:
    """A body that keeps what happens to it, and in which task. What it does when it is called:
    the chunks of `yielding`, with `forever` to wait for what never comes."""

    def __init__(self, *chunks, cleanup_error=None, swallows=False):
        self.chunks = chunks
        self.cleanup_error = cleanup_error
        self.swallows = swallows
        self.events = []
        self.waits = asyncio.Event()

    async def __call__(self):
        task = asyncio.current_task()
        try:
            for chunk in self.chunks:
                if chunk is forever:
                    self.waits.set()
                    await forever()
                elif chunk is None:
                    await asyncio.sleep(0)
                elif isinstance(chunk, Exception):
                    raise chunk
                else:
                    yield chunk
        except BaseException as error:
            self.events.append(type(error))
            if self.swallows:
                yield b'swallowed'
            raise
        finally:
            self.events.append(asyncio.current_task() is task)
            await asyncio.sleep(0)
            await asyncio.sleep(0.001)
            self.events.append('cleaned up')
            if self.cleanup_error is not None:
                raise self.cleanup_error


@contextlib.contextmanager
def deaf_server():
    """Connections to it succeed, by its backlog, but nobody accepts them, nor reads."""
    with socket.create_server(('127.0.0.1', 0)) as listening:
        listening.setblocking(False)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        yield Deaf(listening)


class Deaf:
    def __init__(self, listening):
        self.listening = listening
        self.port = listening.getsockname()[1]
        self.origin = f'http://127.0.0.1:{self.port}'
        self.url = self.origin + '/'

    def accept(self):
        accepted, _ = self.listening.accept()
        accepted.setblocking(False)
        return accepted

    async def all_sent(self):
        """Read after all, until the client has closed the connection."""
        loop = asyncio.get_running_loop()
        pieces = []
        with self.accept() as accepted:
            while piece := await loop.sock_recv(accepted, 2 ** 20):
                pieces.append(piece)
        return b''.join(pieces)


def small_sock(family, size=4096):
    """What is sent soon waits for the peer to read."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
    return sock


LARGE = b'x' * 500_000


@on_loops
async def test_an_upload_to_a_server_that_does_not_read_times_out_and_its_body_is_closed():
    body = Body(LARGE, LARGE)
    with deaf_server() as server:
        async with pool(get_sock=small_sock, socket_timeout=0.05) as request:
            with pytest.raises(HttpDataError) as caught:
                await request(b'PUT', server.url, headers=of_length(2 * len(LARGE)), body=body)
            assert body.events == [GeneratorExit, True, 'cleaned up']
        assert 0 < len(await server.all_sent()) < len(LARGE)
    assert type(caught.value) is HttpDataError
    assert type(caught.value.__cause__) is TimeoutError
    assert str(caught.value) == at(
        server, 'sending the request: TimeoutError: socket_timeout, 0.05 seconds, passed')
    assert (caught.value.reused, caught.value.response_started) == (False, False)
    assert cancelling() == 0


# Whatever the body waits for in its first step, with a head that the server does not take.
BLOCKED = {
    'waits': (lambda: Body(forever), [asyncio.CancelledError, True, 'cleaned up']),
    'waits-and-fails-to-clean-up': (lambda: Body(forever, cleanup_error=LookupError()),
                                    [asyncio.CancelledError, True, 'cleaned up']),
    'goes-on-when-cancelled': (lambda: Body(forever, swallows=True),
                               [asyncio.CancelledError, True, 'cleaned up']),
    'bare-yields': (lambda: Body(None, forever), [asyncio.CancelledError, True, 'cleaned up']),
}


@pytest.mark.parametrize('name', BLOCKED)
@on_loops_at_once
async def test_a_body_in_its_first_step_is_closed_when_its_head_is_blocked(name):
    make, events = BLOCKED[name]
    body = make()
    with deaf_server() as server:
        async with pool(get_sock=small_sock, socket_timeout=0.05) as request:
            with pytest.raises(HttpDataError) as caught:
                await request(b'PUT', server.url, body=body,
                              headers=((b'a', LARGE), *of_length(1)))
            assert body.events == events
        assert 0 < len(await server.all_sent()) < len(LARGE)
    assert str(caught.value) == at(
        server, 'sending the request: TimeoutError: socket_timeout, 0.05 seconds, passed')
    assert cancelling() == 0


class Closable(Chunks):
    """An async iterator with an `aclose` of its own."""

    def __init__(self, *chunks):
        super().__init__(*chunks)
        self.events = []
        self.waits = asyncio.Event()

    async def __anext__(self):
        try:
            if not self.chunks:
                self.waits.set()
                await forever()
            return self.take()
        except BaseException as error:
            self.events.append(type(error))
            raise

    async def aclose(self):
        await asyncio.sleep(0)
        self.events.append('closed')


class Unclosable(Closable):
    aclose = property()


@pytest.mark.parametrize('kind, chunks, headers, events', [
    pytest.param(Closable, (), ((b'a', LARGE), *of_length(1)),
                 [asyncio.CancelledError, 'closed'], id='in-its-first-step'),
    pytest.param(Closable, (LARGE,), of_length(len(LARGE)), ['closed'], id='after-a-chunk'),
    pytest.param(Unclosable, (), ((b'a', LARGE), *of_length(1)),
                 [asyncio.CancelledError], id='in-its-first-step-without-aclose'),
    pytest.param(Unclosable, (LARGE,), of_length(len(LARGE)), [],
                 id='after-a-chunk-without-aclose'),
])
@on_loops_at_once
async def test_an_async_iterator_is_closed_if_it_can_be(kind, chunks, headers, events):
    chunks = kind(*chunks)
    with deaf_server() as server:
        async with pool(get_sock=small_sock, socket_timeout=0.05) as request:
            with pytest.raises(HttpDataError) as caught:
                await request(b'PUT', server.url, body=lambda: chunks, headers=headers)
    assert type(caught.value.__cause__) is TimeoutError
    assert chunks.events == events


class Waiting(Chunks):
    """Its one step is a future of somebody else."""

    def __init__(self):
        super().__init__()
        self.future = asyncio.get_running_loop().create_future()
        self.waits = asyncio.Event()

    async def __anext__(self):
        self.waits.set()
        return await self.future


@pytest.mark.parametrize('ending', ['times-out', 'is-cancelled', 'is-closed'])
@on_loops
async def test_what_a_body_waits_for_is_cancelled_as_a_task_does_it(ending):
    chunks = Waiting()
    with deaf_server() as server:
        async with pool(get_sock=small_sock,
                        socket_timeout=0.05 if ending == 'times-out' else 10) as request:
            coroutine = request(b'PUT', server.url, headers=((b'a', LARGE), *of_length(9)),
                                body=lambda: chunks)
            if ending == 'is-closed':
                await run_until(coroutine, chunks.waits.is_set)
                coroutine.close()
            elif ending == 'is-cancelled':
                task = asyncio.create_task(coroutine)
                await chunks.waits.wait()
                await turns(3)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            else:
                with pytest.raises(HttpDataError):
                    await coroutine
            assert chunks.future.cancelled()


# What a body of content-length 3 yields, the error, and what the body raises or gets.
FAILING_BODIES = {
    'too-many-bytes': ((b'ab', b'cd'), 'the body yielded more than its content-length of 3',
                       GeneratorExit),
    'too-many-bytes-at-once': ((b'abcd',), 'the body yielded more than its content-length of 3',
                               GeneratorExit),
    'too-many-bytes-after-a-wait': (
        (None, b'abcd'), 'the body yielded more than its content-length of 3', GeneratorExit),
    'too-few-bytes': ((b'ab',), 'the body ended 1 bytes short of its content-length of 3', None),
    'an-error': ((b'ab', LookupError('why')), 'LookupError: why', LookupError),
    'no-bytes': ((b'ab', 5), 'TypeError: the body must yield bytes, got int', GeneratorExit),
}


@pytest.mark.parametrize('cleanup_error', [None, LookupError('of the cleaning up')])
@on_loops
async def test_a_body_is_closed_in_the_same_task_before_the_request_raises(cleanup_error):
    for name, (chunks, text, raised) in FAILING_BODIES.items():
        if cleanup_error is not None and raised is not GeneratorExit:
            continue  # then it is not we who close it
        body = Body(*chunks, cleanup_error=cleanup_error)
        async with Server(Uploads()) as server, pool() as request:
            with pytest.raises(HttpError) as caught:
                await request(b'PUT', server.url, headers=of_length(3), body=body)
            assert body.events == [*([raised] if raised else []), True, 'cleaned up'], name
        assert str(caught.value) == at(server, f'the request body: {text}')


@pytest.mark.parametrize('chunks', [
    pytest.param((forever,), id='in-its-first-step'),
    pytest.param((b'ab', forever), id='after-a-chunk'),
    pytest.param((None, None, b'ab', None, forever), id='later'),
])
@on_loops
async def test_a_request_that_is_cancelled_while_its_body_waits_cancels_the_body(chunks):
    body = Body(*chunks)
    script = Uploads()
    async with Server(script) as server, pool() as request:
        task = asyncio.create_task(request(b'PUT', server.url, headers=of_length(9), body=body))
        await body.waits.wait()
        await turns(3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert body.events == [asyncio.CancelledError, True, 'cleaned up']
        assert task.cancelling() == 1
        assert await script.body() == b''.join(
            chunk for chunk in chunks if isinstance(chunk, bytes))


@pytest.mark.parametrize('cleanup_error', [None, LookupError('of the cleaning up')])
@pytest.mark.parametrize('headers, chunks, events', [
    pytest.param(of_length(len(LARGE)), (LARGE,), [GeneratorExit, True, 'cleaned up'],
                 id='while-a-chunk-is-blocked'),
    pytest.param(((b'a', LARGE), *of_length(1)), (forever,),
                 [asyncio.CancelledError, True, 'cleaned up'], id='while-the-head-is-blocked'),
])
@on_loops
async def test_a_request_that_is_cancelled_while_it_is_blocked_closes_its_body(
        headers, chunks, events, cleanup_error):
    body = Body(*chunks, cleanup_error=cleanup_error)
    with deaf_server() as server:
        async with pool(get_sock=small_sock) as request:
            task = asyncio.create_task(request(b'PUT', server.url, headers=headers, body=body))
            await turns(10)
            assert body.events == []
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert body.events == events
            assert task.cancelling() == 1
        assert 0 < len(await server.all_sent()) < len(LARGE)


@on_loops
async def test_the_server_does_not_wait_for_the_end_of_the_connection_while_a_body_cleans_up():
    async def body():
        try:
            yield b'abcd'
        finally:
            await until(lambda: script.received)
            cleaned_up.append(True)

    cleaned_up = []
    script = Uploads()
    async with Server(script) as server, pool() as request:
        with pytest.raises(HttpConnectionError):
            await request(b'PUT', server.url, headers=of_length(1), body=body)
    assert cleaned_up == [True]


@on_loops
async def test_a_cancellation_while_a_body_cleans_up_wins_over_the_error_before():
    async def body():
        try:
            yield b'abcd'
        finally:
            cleans_up.set()
            await forever()

    cleans_up = asyncio.Event()
    async with Server(Uploads()) as server, pool() as request:
        task = asyncio.create_task(request(b'PUT', server.url, headers=of_length(1), body=body))
        await cleans_up.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelling() == 1


@pytest.mark.parametrize('what', ['an early response', 'a reset'])
@on_loops
async def test_a_cancellation_while_a_body_waits_wins_over_what_comes_as_it_cleans_up(what):
    async def script(peer):
        await peer.read_head()
        await peer.read(4)
        await cleans_up.wait()
        if what == 'a reset':
            peer.reset()
        else:
            await peer.send(b'HTTP/1.1 413 No\r\ncontent-length: 0\r\n\r\n')
            await peer.closed()

    async def body():
        try:
            yield b'abcd'
            waits.set()
            await forever()
        finally:
            cleans_up.set()
            # Until what has come ends that, too.
            await forever()

    waits, cleans_up = asyncio.Event(), asyncio.Event()
    async with Server(script) as server, pool() as request:
        task = asyncio.create_task(request(b'PUT', server.url, headers=of_length(5), body=body))
        await waits.wait()
        task.cancel('why')
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert caught.value.args == ('why',)
        assert task.cancelling() == 1


@on_loops
async def test_a_timeout_around_a_request_interrupts_its_body():
    body = Body(b'ab', forever)
    async with Server(Uploads()) as server, pool() as request:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await request(b'PUT', server.url, headers=of_length(3), body=body)
        assert body.events == [asyncio.CancelledError, True, 'cleaned up']
        assert cancelling() == 0


@pytest.mark.parametrize('headers', [
    pytest.param(of_length(2), id='while-the-body-waits'),
    pytest.param(((b'a', LARGE), *of_length(2)), id='while-the-head-is-blocked'),
])
@on_loops
async def test_a_timeout_in_a_body_is_that_of_the_body(headers):
    async def body():
        async with asyncio.timeout(0.05):
            await forever()
        yield b'ab'

    with deaf_server() as server:
        async with pool(get_sock=small_sock) as request:
            with pytest.raises((HttpDataError, asyncio.CancelledError)) as caught:
                await request(b'PUT', server.url, headers=headers, body=body)
    assert type(caught.value) is HttpDataError
    assert str(caught.value) == at(server, 'the request body: TimeoutError')
    assert cancelling() == 0


@on_loops
async def test_a_cancellation_in_the_tick_of_a_timeout_around_a_chunk_wins():
    """The chunk is being sent, to a server that does not read."""
    async def body():
        async with asyncio.timeout(None) as scope:
            scopes.append(scope)
            yield LARGE * 20

    async def script(peer):
        peer.writer.transport.pause_reading()
        await forever()

    scopes = []
    async with Server(script) as server, pool(get_sock=small_sock) as request:
        task = asyncio.create_task(request(
            b'POST', server.url, headers=of_length(len(LARGE) * 20), body=body))
        await until(lambda: scopes)
        await turns(50)
        scopes[0].reschedule(0)
        asyncio.get_running_loop().call_soon(task.cancel)
        await asyncio.wait([task])
        assert task.cancelled()
        assert task.cancelling() == 1


@on_loops
async def test_a_timeout_in_a_body_that_goes_on_is_no_failure_of_ours():
    async def body():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await forever()
        yield b'ab'

    with deaf_server() as server:
        async with pool(get_sock=small_sock, socket_timeout=0.1) as request:
            with pytest.raises(HttpDataError) as caught:
                await request(b'PUT', server.url, headers=((b'a', LARGE), *of_length(2)),
                              body=body)
    # The server never reads, so it does end with an error, but not with one about coroutines.
    assert type(caught.value.__cause__) is TimeoutError


@on_loops
async def test_an_error_in_a_body_is_not_a_cancellation_of_the_request():
    """A body may wait for what somebody else cancels."""
    async def body():
        yield b'a'
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        try:
            await future
        except asyncio.CancelledError:
            yield b'b'

    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        await request(b'PUT', server.url, headers=of_length(2), body=body)
    assert script.bodies == [b'ab']


async def run_until(coroutine, condition):
    """Run a coroutine, in the current task, until it waits and the condition holds."""
    cancellation = None
    while True:
        waited_for = coroutine.throw(cancellation) if cancellation else coroutine.send(None)
        cancellation = None
        try:
            if waited_for is None:
                await turns(1)
            else:
                waited_for._asyncio_future_blocking = False
                await until(lambda: waited_for.done() or condition())  # noqa: B023
        except asyncio.CancelledError as error:
            cancellation = error
        if condition():
            return


@pytest.mark.parametrize('chunks', [(), (b'ab',)], ids=['in-its-first-step', 'after-a-chunk'])
@on_loops
async def test_a_request_whose_coroutine_is_closed_closes_its_connection(chunks):
    chunks = Closable(*chunks)
    script = Uploads()
    async with Server(script) as server, pool() as request:
        coroutine = request(b'PUT', server.url, headers=of_length(9), body=lambda: chunks)
        await run_until(coroutine, chunks.waits.is_set)
        coroutine.close()
        # An `aclose` could not be awaited any more.
        assert chunks.events == [asyncio.CancelledError]
        await script.body()


@pytest.mark.parametrize('chunks, headers', [
    pytest.param((forever,), of_length(9), id='in-its-first-step'),
    pytest.param((b'ab', forever), of_length(9), id='after-a-chunk'),
    pytest.param((forever,), ((b'a', LARGE), *of_length(9)), id='while-the-head-is-blocked'),
])
@on_loops
async def test_a_request_whose_coroutine_is_closed_lets_its_generator_clean_up(chunks, headers):
    # Left to itself, the loop would close it in a task, and that would fail.
    async def body():
        try:
            for chunk in chunks:
                if chunk is forever:
                    waits.append(True)
                    await forever()
                yield chunk
        finally:
            cleaned_up.append(True)

    waits, cleaned_up = [], []
    with deaf_server() as server:
        async with pool(get_sock=small_sock) as request:
            coroutine = request(b'PUT', server.url, headers=headers, body=body)
            await run_until(coroutine, lambda: waits)
            coroutine.close()
            assert cleaned_up == [True]


class Ending:
    """A body function whose generator has yet to end when the request is closed."""

    def __init__(self, first, goes_on=0, cleanup=0):
        self.first = first
        self.goes_on = goes_on
        self.cleanup = cleanup
        self.is_open = False

    async def __call__(self):
        self.is_open = True
        try:
            yield self.first
            if not self.goes_on:
                await forever()
            for _ in range(self.goes_on):
                with contextlib.suppress(asyncio.CancelledError):
                    await forever()
            yield b'more'
        finally:
            try:
                await turns(self.cleanup)
            finally:
                self.is_open = False


@pytest.mark.parametrize('is_blocked', [True, False], ids=['blocked', 'waits'])
@pytest.mark.parametrize('goes_on, cleanup', [
    pytest.param(0, 0, id='ends'), pytest.param(0, 2, id='awaits-as-it-cleans-up'),
    pytest.param(1, 0, id='goes-on'), pytest.param(1, 2, id='goes-on-and-cleans-up'),
    pytest.param(5, 2, id='goes-on-again-and-again')])
@on_loops
async def test_a_request_whose_coroutine_is_closed_ends_its_generator_and_sends_no_more(
        is_blocked, goes_on, cleanup):
    body = Ending(LARGE if is_blocked else b'first', goes_on, cleanup)
    with deaf_server() as server:
        async with pool(get_sock=small_sock) as request:
            coroutine = request(b'PUT', server.url, headers=of_length(10 ** 6), body=body)
            await run_until(coroutine, lambda: body.is_open)
            coroutine.close()
            assert not body.is_open
        assert b'more' not in await server.all_sent()


@on_loops
async def test_a_request_whose_coroutine_is_closed_gives_its_resolver_up():
    def get_dns_resolver(get_logger_adapter):
        async def resolve(name, kind, get_logger_adapter):
            try:
                waits.append(True)
                await forever()
            except BaseException as error:
                events.append(type(error))
                raise

        async def clear_cache(get_logger_adapter):
            pass

        return resolve, clear_cache

    waits, events = [], []
    async with pool(get_dns_resolver=get_dns_resolver) as request:
        coroutine = request(b'GET', 'http://any.example/')
        await run_until(coroutine, lambda: waits)
        coroutine.close()
        assert events == [asyncio.CancelledError]


@on_loops_at_once
async def test_the_clock_does_not_run_while_the_body_of_the_caller_does():
    async def body():
        for chunk in (b'a', b'b'):
            await asyncio.sleep(0.25)
            yield chunk

    script = Answering(OK)
    async with Server(script) as server, pool(socket_timeout=0.15) as request:
        await request(b'PUT', server.url, headers=of_length(2), body=body)
    assert script.bodies == [b'ab']


@on_loops_at_once
async def test_the_time_of_an_upload_is_that_of_each_progress_of_it():
    loop = asyncio.get_running_loop()
    with deaf_server() as server:
        async with pool(get_sock=small_sock, socket_timeout=0.3) as request:
            start = loop.time()
            task = asyncio.create_task(request(
                b'PUT', server.url, headers=of_length(len(LARGE)), body=streamed(LARGE)))
            await turns(10)
            with server.accept() as accepted:
                received = 0
                while loop.time() < start + 0.4:
                    received += len(await loop.sock_recv(accepted, 4096))
                    await asyncio.sleep(0.01)
                assert received < len(LARGE)
                while received < len(LARGE):
                    received += len(await loop.sock_recv(accepted, 2 ** 20))
                await loop.sock_sendall(accepted, OK)
                assert (await task)[0] == b'200'


@on_loops
async def test_a_large_head_is_sent_whole_to_a_server_that_reads_slowly():
    with deaf_server() as server:
        async with pool(get_sock=small_sock) as request:
            task = asyncio.create_task(request(b'GET', server.url, headers=((b'a', LARGE),)))
            await turns(10)
            loop = asyncio.get_running_loop()
            with server.accept() as accepted:
                received = b''
                while not received.endswith(b'\r\n\r\n'):
                    received += await loop.sock_recv(accepted, 10_000)
                await loop.sock_sendall(accepted, OK)
                assert (await task)[0] == b'200'
    assert received == (f'GET / HTTP/1.1\r\nhost: 127.0.0.1:{server.port}\r\n'.encode()
                        + b'a: ' + LARGE + b'\r\n\r\n')


@contextlib.asynccontextmanager
async def counting_turns():
    """Yields a function that tells how many turns another task has had."""
    async def count():
        nonlocal counted
        while True:
            await asyncio.sleep(0)
            counted += 1

    counted = 0
    task = asyncio.create_task(count())
    yield lambda: counted
    task.cancel()


@on_loops
@pytest.mark.parametrize('chunk, number, turns_at_least', [
    pytest.param(LARGE, 40, 40 * len(LARGE) // 2 ** 19, id='large'),
    pytest.param(b'-', 5000, 5000 * 1024 // 2 ** 19, id='tiny'),
])
async def test_an_upload_lets_other_tasks_run(chunk, number, turns_at_least):
    length = number * len(chunk)

    async def script(peer):
        await peer.read_head()
        await peer.read(length)
        await peer.send(OK)

    async def body():
        nonlocal had
        for _ in range(number):
            yield chunk
        had = counted()

    had = 0
    async with Server(script) as server, pool() as request, counting_turns() as counted:
        await request(b'PUT', server.url, headers=of_length(length), body=body)
    assert had >= turns_at_least


@on_loops
async def test_a_request_that_fails_at_once_lets_other_tasks_run():
    [sock] = bound_to('127.0.0.1')  # and not listening
    with sock:
        async with pool() as request, counting_turns() as counted:
            for _ in range(10):
                await failed(request(b'GET', f'http://127.0.0.1:{sock.getsockname()[1]}/'),
                             HttpConnectionError, ConnectionRefusedError)
            assert counted() >= 5


# ------------------------------------------------------------------------------- received
#
# What comes over the wire, as a table. A row has the bytes that the server sends as answer to
# one request, and what the client is to make of them; how the bytes are cut on their way is no
# part of it, since the outcome must not depend on that.


def head(*lines: bytes, start: bytes = b'HTTP/1.1 200 OK') -> bytes:
    return b'\r\n'.join((start, *lines, b'', b''))


def with_length(*lines: bytes, start: bytes = b'HTTP/1.1 200 OK') -> bytes:
    return head(*lines, b'content-length: 2', start=start) + b'ok'


def chunked(body: bytes, *lines: bytes, start: bytes = b'HTTP/1.1 200 OK') -> bytes:
    return head(b'transfer-encoding: chunked', *lines, start=start) + body


def with_much_framing(length: int) -> bytes:
    """66 chunks of one byte, with so many bytes in the lines of their sizes."""
    first = b'1;' + b'a' * 1004 + b'\r\nx'
    other = b'\r\n1;' + b'a' * 1002 + b'\r\nx'
    last = b'\r\n0;' + b'a' * (length - 66 * 1008 - 6) + b'\r\n\r\n'
    return chunked(first + 65 * other + last)


class Row:
    def __init__(self, raw, expected, method=b'GET', sent=(), ends=False):
        self.raw = raw
        self.expected = expected
        self.method = method
        self.sent = sent  # fields of the request
        self.ends = ends  # the server closes after it


def good(raw, body=b'ok', *, code=b'200', fields=None, trailers=(), kept=True, **row):
    """`kept`: the next request goes over the same connection. If not, the client closes it."""
    return Row(raw, {'code': code, 'fields': fields, 'body': body, 'trailers': trailers,
                     'kept': kept}, **row)


def bad(raw, text, *, error=HttpDataError, cause=ValueError, started=True, **row):
    """`text` is the whole message after method, origin and peer."""
    return Row(raw, {'error': error, 'cause': cause, 'text': text, 'reused': False,
                     'response_started': started, 'kept': False}, **row)


def bad_status(raw, came, **row):
    return bad(raw, 'reading the response head: bad status line: expected HTTP/1.x, '
               f'a space, three digits and a reason, got {came}', **row)


def bad_line(raw, came, *, phase='head', **row):
    return bad(raw, f'reading the response {phase}: bad field line: expected a token, ":" and '
               f'a value, got {came}', **row)


def bad_length(value, came):
    return bad(head(b'content-length: ' + value) + b'ok', 'reading the response head: '
               f'bad content-length: expected 1 to 20 digits, got {came}')


def bad_coding(came, *lines):
    return bad(head(*lines) + b'2\r\nok\r\n0\r\n\r\n',
               f'reading the response head: bad transfer-encoding: expected chunked, got {came}')


def bad_size(body, came, after_chunk=False):
    return bad(chunked(body), 'reading the response body: bad chunk-size line: expected '
               f'{"CRLF after the chunk, " if after_chunk else ""}1 to 16 hex digits, an '
               f'optional extension and CRLF, got {came}')


def ended(raw, text, **row):
    return bad(raw, f'reading the response {text}', error=HttpConnectionClosedError,
               cause=EOFError, ends=True, **row)


NO_CONTENT = b'HTTP/1.1 204 No Content'
NOT_MODIFIED = b'HTTP/1.1 304 Not Modified'
SWITCHING = b'HTTP/1.1 101 Switching Protocols'
CONTINUE = b'HTTP/1.1 100 Continue\r\n\r\n'
OLD = b'HTTP/1.0 200 OK'
UPGRADE = ((b'connection', b'upgrade'), (b'upgrade', b'chat'))
CLOSED = 'the peer closed the connection'
MAY_BE_TLS = ' (the port may be for https)'

STATUS_LINE_ROWS = {
    'status line': good(with_length()),
    'status line of HTTP/1.0': good(with_length(start=OLD), kept=False),
    'status line with an empty reason': good(with_length(start=b'HTTP/1.1 200 ')),
    'status line without a reason': good(with_length(start=b'HTTP/1.1 200')),
    'status line with a long reason': good(with_length(start=b'HTTP/1.1 200 ' + b'so ' * 99)),
    'status line with a reason of HTAB and obs-text': good(
        with_length(start=b'HTTP/1.1 200 D\xe9j\xe0\tvu: 1')),
    'status line with a code that nobody knows': good(
        with_length(start=b'HTTP/1.1 799 Hm'), code=b'799'),
    'status line with the lowest code': good(with_length(start=b'HTTP/1.1 000 Zero'), code=b'000'),
    'status line with the highest code': good(with_length(start=b'HTTP/1.1 999 Top'), code=b'999'),
    'status line of an error': good(
        with_length(start=b'HTTP/1.1 503 Service Unavailable'), code=b'503'),
    'status line in lower case': bad_status(with_length(start=b'http/1.1 200 OK'),
                                            r"b'http/1.1 200 OK\r'"),
    'status line of HTTP/1.2': good(with_length(start=b'HTTP/1.2 200 OK')),
    'status line of HTTP/1.9': good(with_length(start=b'HTTP/1.9 200 OK')),
    'status line of HTTP/2.0': bad_status(with_length(start=b'HTTP/2.0 200 OK'),
                                          r"b'HTTP/2.0 200 OK\r'"),
    'status line of HTTP/2': bad_status(with_length(start=b'HTTP/2 200'), r"b'HTTP/2 200\r'"),
    'status line of HTTP/0.9': bad_status(with_length(start=b'HTTP/0.9 200 OK'),
                                          r"b'HTTP/0.9 200 OK\r'"),
    'status line of HTTP/1,1': bad_status(with_length(start=b'HTTP/1,1 200 OK'),
                                          r"b'HTTP/1,1 200 OK\r'"),
    'status line of HTTP/1.10': bad_status(with_length(start=b'HTTP/1.10 200 OK'),
                                           r"b'HTTP/1.10 200 OK\r'"),
    'status line of HTTP/01.1': bad_status(with_length(start=b'HTTP/01.1 200 OK'),
                                           r"b'HTTP/01.1 200 OK\r'"),
    'status line of HTTP/1': bad_status(with_length(start=b'HTTP/1 200 OK'),
                                        r"b'HTTP/1 200 OK\r'"),
    'status line of another protocol': bad_status(b'ICY 200 OK\r\n\r\n', r"b'ICY 200 OK\r'"),
    'status line with two spaces': bad_status(with_length(start=b'HTTP/1.1  200 OK'),
                                              r"b'HTTP/1.1  200 OK\r'"),
    'status line with a tab': bad_status(with_length(start=b'HTTP/1.1\t200 OK'),
                                         r"b'HTTP/1.1\t200 OK\r'"),
    'status line with a tab before the reason': bad_status(
        with_length(start=b'HTTP/1.1 200\tOK'), r"b'HTTP/1.1 200\tOK\r'"),
    'status line with two digits': bad_status(with_length(start=b'HTTP/1.1 20 OK'),
                                              r"b'HTTP/1.1 20 OK\r'"),
    'status line with four digits': bad_status(with_length(start=b'HTTP/1.1 2000 OK'),
                                               r"b'HTTP/1.1 2000 OK\r'"),
    'status line with a sign': bad_status(with_length(start=b'HTTP/1.1 +20 OK'),
                                          r"b'HTTP/1.1 +20 OK\r'"),
    'status line with a letter in its code': bad_status(with_length(start=b'HTTP/1.1 2x0 OK'),
                                                        r"b'HTTP/1.1 2x0 OK\r'"),
    'status line with digits that are not ASCII': bad_status(
        with_length(start=b'HTTP/1.1 20\xb2 OK'), r"b'HTTP/1.1 20\xb2 OK\r'"),
    'status line with no space after the code': bad_status(
        with_length(start=b'HTTP/1.1 200OK'), r"b'HTTP/1.1 200OK\r'"),
    'status line after a space': bad_status(with_length(start=b' HTTP/1.1 200 OK'),
                                            r"b' HTTP/1.1 200 OK\r'"),
    'status line after an empty line': bad_status(b'\r\n' + with_length(), r"b'\r'"),
    'status line after an empty line of LF': bad_status(b'\n' + with_length(), "b''"),
    'status line with NUL': bad_status(with_length(start=b'HTTP/1.1 200 O\x00K'),
                                       r"b'HTTP/1.1 200 O\x00K\r'"),
    'status line with a bare CR': bad_status(with_length(start=b'HTTP/1.1 200 O\rK'),
                                             r"b'HTTP/1.1 200 O\rK\r'"),
    'status line with two CR': bad_status(with_length(start=b'HTTP/1.1 200 OK\r'),
                                          r"b'HTTP/1.1 200 OK\r\r'"),
    'status line cut short in the message': bad_status(
        b'<html>' + b'.' * 100 + b'\n\n', f"b'<html>{54 * '.'}'..."),
    # It is judged once it is there, whatever may follow.
    'status line that is bad, and nothing after it': bad_status(b'hello\n', "b'hello'"),
    'status line is missing': bad_status(b'a: b\r\n\r\n', r"b'a: b\r'"),
    'nothing at all': ended(b'', f'head: {CLOSED}, after no byte of it{MAY_BE_TLS}',
                            started=False),
    'end in the status line': ended(b'HTTP/1.1 2', f"head: {CLOSED}, after b'HTTP/1.1 2'"),
    'end after the status line': ended(
        b'HTTP/1.1 200 OK\r\n', rf"head: {CLOSED}, after b'HTTP/1.1 200 OK\r\n'"),
    'end in the fields': ended(
        with_length(b'x: ' + 80 * b'y')[:-8],
        rf"head: {CLOSED}, after b'HTTP/1.1 200 OK\r\nx: {40 * 'y'}'..."),
}

FIELDS_ROWS = {
    'line ends of LF': good(b'HTTP/1.1 200 OK\nA: b\ncontent-length: 2\n\nok',
                            fields=((b'a', b'b'), (b'content-length', b'2'))),
    'line ends of both kinds': good(b'HTTP/1.1 200 OK\nA: b\r\ncontent-length: 2\n\r\nok',
                                    fields=((b'a', b'b'), (b'content-length', b'2'))),
    'line ends of CRLF, empty line of LF': good(
        b'HTTP/1.1 200 OK\r\nA: b\r\ncontent-length: 2\r\n\nok',
        fields=((b'a', b'b'), (b'content-length', b'2'))),
    'line end of the status line of LF': good(b'HTTP/1.1 200 OK\ncontent-length: 2\r\n\r\nok'),
    # The body starts right after the empty line, even if with what might be one more.
    'line ends at the start of the body': good(
        b'HTTP/1.1 200 OK\ncontent-length: 3\n\n\r\n\n', b'\r\n\n'),
    'bare CR in a value': bad_line(with_length(b'a: b\rc'), r"b'a: b\rc\r'"),
    'bare CR between fields': bad_line(with_length(b'a: b\rc: d'), r"b'a: b\rc: d\r'"),
    'bare CR at the end of a value': bad_line(with_length(b'a: b\r'), r"b'a: b\r\r'"),
    'bare CR as the whole value': bad_line(with_length(b'a:\r'), r"b'a:\r\r'"),
    'bare CR before the empty line': bad_line(
        b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\r\n\r\nok', r"b'\r\r'"),
    'NUL in a value': bad_line(with_length(b'a: b\x00c'), r"b'a: b\x00c\r'"),
    'NUL in a name': bad_line(with_length(b'a\x00b: c'), r"b'a\x00b: c\r'"),
    'NUL as a value': bad_line(with_length(b'a: \x00'), r"b'a: \x00\r'"),
    'no field': good(head(start=NO_CONTENT), b'', code=b'204', fields=()),
    'fields in order, with duplicates, in lower case': good(
        with_length(b'X-B: 1', b'x-a: 2', b'X-b: 3', b'X-A: 2'),
        fields=((b'x-b', b'1'), (b'x-a', b'2'), (b'x-b', b'3'), (b'x-a', b'2'),
                (b'content-length', b'2'))),
    'field with no whitespace': good(with_length(b'a:b'),
                                     fields=((b'a', b'b'), (b'content-length', b'2'))),
    'field with whitespace around its value': good(
        with_length(b'a: \t b \t c\t \t'),
        fields=((b'a', b'b \t c'), (b'content-length', b'2'))),
    'field with an empty value': good(
        with_length(b'a:', b'b: \t '),
        fields=((b'a', b''), (b'b', b''), (b'content-length', b'2'))),
    'field with colons in its value': good(
        with_length(b'a: :b::c'), fields=((b'a', b':b::c'), (b'content-length', b'2'))),
    'field with every character of a token': good(
        with_length(b"!#$%&'*+-.^_`|~09AZaz: b"),
        fields=((b"!#$%&'*+-.^_`|~09azaz", b'b'), (b'content-length', b'2'))),
    'field with obs-text': good(
        with_length(b'a: \xc3\xa9\xff\x80'),
        fields=((b'a', b'\xc3\xa9\xff\x80'), (b'content-length', b'2'))),
    'field with other control characters': good(
        with_length(b'a: \x01\x0b\x0c\x1f\x7f\x85'),
        fields=((b'a', b'\x01\x0b\x0c\x1f\x7f\x85'), (b'content-length', b'2'))),
    'field with a long value': good(
        with_length(b'a: ' + b'b ' * 200 + b'c'),
        fields=((b'a', b'b ' * 200 + b'c'), (b'content-length', b'2'))),
    'many fields': good(with_length(*[b'a: %d' % i for i in range(50)]), fields=(
        *[(b'a', b'%d' % i) for i in range(50)], (b'content-length', b'2'))),
    'space before the colon': bad_line(with_length(b'a : b'), r"b'a : b\r'"),
    'tab before the colon': bad_line(with_length(b'a\t: b'), r"b'a\t: b\r'"),
    'space before the colon of a framing field': bad_line(
        head(b'content-length: 2', b'transfer-encoding : chunked') + b'ok',
        r"b'transfer-encoding : chunked\r'"),
    'no colon': bad_line(with_length(b'a b'), r"b'a b\r'"),
    'no name': bad_line(with_length(b': b'), r"b': b\r'"),
    'a colon only': bad_line(with_length(b':'), r"b':\r'"),
    'space in a name': bad_line(with_length(b'a b: c'), r"b'a b: c\r'"),
    'separator in a name': bad_line(with_length(b'a(b): c'), r"b'a(b): c\r'"),
    'quotes around a name': bad_line(with_length(b'"a": b'), "b'\"a\": b\\r'"),
    'obs-text in a name': bad_line(with_length(b'\xe9: b'), r"b'\xe9: b\r'"),
    'a second status line': bad_line(with_length(b'HTTP/1.1 200 OK'), r"b'HTTP/1.1 200 OK\r'"),
    'bad last field': bad_line(head(b'content-length: 2', b'b') + b'ok', r"b'b\r'"),
    'bad field cut short in the message': bad_line(
        with_length(b'x' * 70), f"b'{60 * 'x'}'..."),
    'obs-fold with a space': good(with_length(b'a: b\r\n c'),
                                  fields=((b'a', b'b c'), (b'content-length', b'2'))),
    'obs-fold with a tab': good(with_length(b'a: b\r\n\tc'),
                                fields=((b'a', b'b c'), (b'content-length', b'2'))),
    'obs-fold after LF': good(with_length(b'a: b\n c'),
                              fields=((b'a', b'b c'), (b'content-length', b'2'))),
    'obs-fold with whitespace on both sides': good(
        with_length(b'a: b \t\r\n\t  c'), fields=((b'a', b'b c'), (b'content-length', b'2'))),
    'obs-fold over several lines': good(
        with_length(b'a: b\r\n c\r\n\td', b'e: f\r\n g'),
        fields=((b'a', b'b c d'), (b'e', b'f g'), (b'content-length', b'2'))),
    'obs-fold before the value': good(with_length(b'a:\r\n b'),
                                      fields=((b'a', b'b'), (b'content-length', b'2'))),
    'obs-fold with nothing but whitespace': good(
        with_length(b'a: b\r\n \t \r\n c'), fields=((b'a', b'b c'), (b'content-length', b'2'))),
    'obs-fold after the value': good(
        with_length(b'a: b\r\n \t'), fields=((b'a', b'b'), (b'content-length', b'2'))),
    'obs-fold of what looks like a field': good(
        with_length(b'a: b\r\n content-length: 9'),
        fields=((b'a', b'b content-length: 9'), (b'content-length', b'2'))),
    'obs-fold in the last field': good(
        head(b'content-length: 2', b'a: b\r\n c') + b'ok',
        fields=((b'content-length', b'2'), (b'a', b'b c'))),
    'obs-fold of a length': good(head(b'content-length:\r\n 2') + b'ok'),
    'obs-fold of a coding': good(
        head(b'transfer-encoding:\r\n chunked') + b'2\r\nok\r\n0\r\n\r\n'),
    'obs-fold inside a length': bad(
        head(b'content-length: 1\r\n 0') + b'0123456789',
        "reading the response head: bad content-length: expected 1 to 20 digits, got b'1 0'"),
    'obs-fold in the first line': bad_line(with_length(b' a: b'), r"b' a: b\r'"),
    'obs-fold of nothing in the first line': bad_line(with_length(b' '), r"b' \r'"),
    'obs-fold inside a name': bad_line(with_length(b'a\r\n : b'), r"b'a : b\r'"),
    'obs-fold of a name': bad_line(with_length(b'a\r\n b: c'), r"b'a b: c\r'"),
    'obs-fold with NUL': bad_line(with_length(b'a: b\r\n \x00'), r"b'a: b \x00\r'"),
}

INTERIM_ROWS = {
    'interim response': good(CONTINUE + with_length()),
    'interim response with fields': good(
        head(b'Link: </a>', b'content-length: 9', start=b'HTTP/1.1 103 Early Hints')
        + with_length(), fields=((b'content-length', b'2'),)),
    'interim response with LF': good(b'HTTP/1.1 102 P\n\n' + with_length()),
    'interim response that nobody knows': good(head(start=b'HTTP/1.1 199 Hm') + with_length()),
    'interim response of HTTP/1.0': good(head(start=b'HTTP/1.0 100 C') + with_length()),
    'interim response with connection: close': good(
        head(b'connection: close', start=b'HTTP/1.1 103 Early Hints') + with_length()),
    'interim response that says chunked': good(
        head(b'transfer-encoding: chunked', start=b'HTTP/1.1 103 E') + with_length()),
    'interim response before one without a body': good(
        CONTINUE + head(start=NO_CONTENT), b'', code=b'204'),
    'interim response before chunks': good(CONTINUE + chunked(b'2\r\nok\r\n0\r\n\r\n')),
    'interim responses, 100 of them': good(100 * CONTINUE + with_length()),
    'interim responses, 101 of them': bad(
        101 * CONTINUE + with_length(),
        'reading the response head: got more than 100 interim responses'),
    'interim response with a bad field': bad_line(
        head(b'a', start=b'HTTP/1.1 103 E') + with_length(), r"b'a\r'"),
    'interim response, then none': bad_status(CONTINUE + b'hello\r\n\r\n', r"b'hello\r'"),
    'interim response, then the end': ended(CONTINUE, f'head: {CLOSED}, after no byte of it'),
    'interim response, then the end in the next': ended(
        CONTINUE + b'HTTP', f"head: {CLOSED}, after b'HTTP'"),
    'switching protocols': good(
        head(b'upgrade: chat', b'connection: upgrade', start=SWITCHING) + b'\x00anything\r\n',
        b'\x00anything\r\n', code=b'101', kept=False, ends=True, sent=UPGRADE,
        fields=((b'upgrade', b'chat'), (b'connection', b'upgrade'))),
    'switching protocols, no byte': good(
        head(start=SWITCHING), b'', code=b'101', kept=False, ends=True, sent=UPGRADE),
    'switching protocols, with a length': good(
        head(b'content-length: 2', start=SWITCHING) + b'all of it', b'all of it', code=b'101',
        kept=False, ends=True, sent=UPGRADE),
    'switching protocols, said to be chunked': good(
        head(b'transfer-encoding: chunked', start=SWITCHING) + b'2\r\nok', b'2\r\nok',
        code=b'101', kept=False, ends=True, sent=UPGRADE),
    'switching protocols after an interim response': good(
        CONTINUE + head(start=SWITCHING) + b'all', b'all', code=b'101', kept=False, ends=True,
        sent=UPGRADE),
    'switching protocols, of HEAD': good(
        head(start=SWITCHING) + b'all', b'all', code=b'101', kept=False, ends=True, sent=UPGRADE,
        method=b'HEAD'),
    'switching protocols, of HEAD, no byte': good(
        head(start=SWITCHING), b'', code=b'101', kept=False, ends=True, sent=UPGRADE,
        method=b'HEAD'),
    'switching protocols, of HTTP/1.2': good(
        head(start=b'HTTP/1.2 101 Switching Protocols') + b'all', b'all', code=b'101', kept=False,
        ends=True, sent=UPGRADE),
    'switching protocols declined': good(with_length(), sent=UPGRADE),
    'switching protocols unasked': bad(
        head(start=SWITCHING) + with_length(), 'reading the response head: got 101 Switching '
        'Protocols, but the request had no upgrade'),
    'switching protocols unasked, of HEAD': bad(
        head(start=SWITCHING), 'reading the response head: got 101 Switching Protocols, but the '
        'request had no upgrade', method=b'HEAD'),
    'switching protocols unasked, with connection: upgrade only': bad(
        head(start=SWITCHING) + with_length(), 'reading the response head: got 101 Switching '
        'Protocols, but the request had no upgrade', sent=((b'connection', b'upgrade'),)),
}

NO_BODY_ROWS = {
    'HEAD with a length': good(head(b'content-length: 5'), b'', method=b'HEAD',
                               fields=((b'content-length', b'5'),)),
    'HEAD with a coding': good(head(b'transfer-encoding: chunked'), b'', method=b'HEAD'),
    'HEAD with neither': good(head(), b'', method=b'HEAD'),
    'HEAD of an error': good(
        head(b'content-length: 5', start=b'HTTP/1.1 404 Not Found'), b'', code=b'404',
        method=b'HEAD'),
    'HEAD of HTTP/1.0': good(head(b'content-length: 5', start=OLD), b'', method=b'HEAD',
                             kept=False),
    'HEAD with connection: close': good(head(b'connection: close'), b'', method=b'HEAD',
                                        kept=False),
    'HEAD with a bad length': bad(
        head(b'content-length: 5x'),
        "reading the response head: bad content-length: expected 1 to 20 digits, got b'5x'",
        method=b'HEAD'),
    'HEAD with a length and a coding': good(
        head(b'content-length: 2', b'transfer-encoding: chunked'), b'', method=b'HEAD',
        kept=False),
    'HEAD of HTTP/1.0 with a coding and keep-alive': good(
        head(b'transfer-encoding: chunked', b'connection: keep-alive', start=OLD), b'',
        method=b'HEAD', kept=False),
    'HEAD after an interim response': good(
        CONTINUE + head(b'content-length: 5'), b'', method=b'HEAD'),
    '204': good(head(start=NO_CONTENT), b'', code=b'204'),
    # Some servers send what they declare.
    '204 with a length': good(
        head(b'content-length: 5', start=NO_CONTENT), b'', code=b'204', kept=False),
    '204 with a length of 0': good(
        head(b'content-length: 0', start=NO_CONTENT), b'', code=b'204'),
    '204 with a coding': good(chunked(b'', start=NO_CONTENT), b'', code=b'204', kept=False),
    '204 with a coding, of HEAD': good(
        chunked(b'', start=NO_CONTENT), b'', code=b'204', method=b'HEAD', kept=False),
    '204 with a coding of identity': good(
        head(b'transfer-encoding: identity', start=NO_CONTENT), b'', code=b'204'),
    '204 with an unknown coding': good(
        head(b'transfer-encoding: gzip', start=NO_CONTENT), b'', code=b'204', kept=False),
    '204 with a length and keep-alive': good(
        head(b'content-length: 5', b'connection: keep-alive', start=NO_CONTENT), b'', code=b'204',
        kept=False),
    '204 with connection: close': good(
        head(b'connection: close', start=NO_CONTENT), b'', code=b'204', kept=False),
    '304': good(head(start=NOT_MODIFIED), b'', code=b'304'),
    '304 with a length': good(head(b'content-length: 5', start=NOT_MODIFIED), b'', code=b'304'),
    '304 with a length and a coding': good(
        chunked(b'', b'content-length: 5', start=NOT_MODIFIED), b'', code=b'304', kept=False),
    '304 with a coding': good(chunked(b'', start=NOT_MODIFIED), b'', code=b'304'),
    # RFC 9110 15.3.6 says that it has none, but RFC 9112 6.3 frames it like any other.
    '205 with a body': good(with_length(start=b'HTTP/1.1 205 Reset Content'), code=b'205'),
}

CODING_ROWS = {
    'coding of chunked': good(chunked(b'2\r\nok\r\n0\r\n\r\n')),
    'coding of chunked in any case': good(
        head(b'Transfer-Encoding: ChunKed') + b'2\r\nok\r\n0\r\n\r\n'),
    'coding of chunked with whitespace': good(
        head(b'transfer-encoding: \tchunked \t') + b'2\r\nok\r\n0\r\n\r\n'),
    'coding of identity, with a length': good(with_length(b'transfer-encoding: identity')),
    'coding of identity in any case, with a length': good(
        with_length(b'transfer-encoding: IDENTITY')),
    'coding of identity, with a length, on HTTP/1.0': good(
        with_length(b'transfer-encoding: identity', b'connection: keep-alive', start=OLD)),
    'HEAD with a coding of identity and a length': good(
        head(b'transfer-encoding: identity', b'content-length: 2'), b'', method=b'HEAD'),
    'coding of identity, without a length': good(
        head(b'transfer-encoding: identity') + b'ok', kept=False, ends=True),
    'coding and then a length': good(
        chunked(b'2\r\nok\r\n0\r\n\r\n', b'content-length: 5'), kept=False),
    'coding after a length': good(
        head(b'content-length: 2', b'transfer-encoding: chunked') + b'2\r\nok\r\n0\r\n\r\n',
        kept=False),
    'coding and a length of 0': good(
        chunked(b'2\r\nok\r\n0\r\n\r\n', b'content-length: 0'), kept=False),
    'coding and a length, and keep-alive': good(
        chunked(b'2\r\nok\r\n0\r\n\r\n', b'content-length: 2', b'connection: keep-alive'),
        kept=False),
    'coding on HTTP/1.0': good(chunked(b'2\r\nok\r\n0\r\n\r\n', start=OLD), kept=False),
    'coding on HTTP/1.0 with keep-alive': good(
        chunked(b'2\r\nok\r\n0\r\n\r\n', b'connection: keep-alive', start=OLD), kept=False),
    'coding and a bad length': bad(
        chunked(b'2\r\nok\r\n0\r\n\r\n', b'content-length: x'),
        "reading the response head: bad content-length: expected 1 to 20 digits, got b'x'"),
    'coding of gzip': bad_coding("b'gzip'", b'transfer-encoding: gzip'),
    'coding of gzip, with a length': bad_coding(
        "b'gzip'", b'transfer-encoding: gzip', b'content-length: 2'),
    'coding of gzip, chunked': bad_coding("b'gzip, chunked'", b'transfer-encoding: gzip, chunked'),
    'coding of gzip and of chunked': bad_coding(
        "b'gzip, chunked'", b'transfer-encoding: gzip', b'transfer-encoding: chunked'),
    'coding of chunked, gzip': bad_coding("b'chunked, gzip'", b'transfer-encoding: chunked, gzip'),
    'coding of chunked twice': bad_coding(
        "b'chunked, chunked'", b'transfer-encoding: chunked, chunked'),
    'coding of chunked in two fields': bad_coding(
        "b'chunked, chunked'", b'transfer-encoding: chunked', b'transfer-encoding: chunked'),
    'coding of chunked with a parameter': bad_coding(
        "b'chunked;a=b'", b'transfer-encoding: chunked;a=b'),
    'coding of chunked in quotes': bad_coding("b'\"chunked\"'", b'transfer-encoding: "chunked"'),
    'coding of chunked after a comma': good(
        head(b'transfer-encoding: , chunked') + b'2\r\nok\r\n0\r\n\r\n'),
    'coding of chunked before a comma': good(
        head(b'transfer-encoding: chunked,') + b'2\r\nok\r\n0\r\n\r\n'),
    'coding of chunked among commas and whitespace': good(
        head(b'transfer-encoding: ,\t, Chunked , ,') + b'2\r\nok\r\n0\r\n\r\n'),
    'coding of chunked beside an empty field': good(
        head(b'transfer-encoding:', b'transfer-encoding: chunked') + b'2\r\nok\r\n0\r\n\r\n'),
    'coding of identity before a comma': good(with_length(b'transfer-encoding: identity,')),
    'coding of nothing': bad_coding("b''", b'transfer-encoding:'),
    'coding of commas only': bad_coding("b''", b'transfer-encoding: ,,'),
    'coding of nothing, with a length': bad_coding(
        "b''", b'transfer-encoding:', b'content-length: 2'),
    'coding of chunked, identity': bad_coding(
        "b'chunked, identity'", b'transfer-encoding: chunked, identity'),
    'coding of chunked and of identity': bad_coding(
        "b'chunked, identity'", b'transfer-encoding: chunked', b'transfer-encoding: identity'),
    'coding of identity and of chunked': bad_coding(
        "b'identity, chunked'", b'transfer-encoding: identity', b'transfer-encoding: chunked'),
    'coding of identity twice': bad_coding(
        "b'identity, identity'", b'transfer-encoding: identity', b'transfer-encoding: identity'),
    'coding of identity with a parameter': bad_coding(
        "b'identity;a=b'", b'transfer-encoding: identity;a=b', b'content-length: 2'),
    'coding of chunked after a vertical tab': bad_coding(
        r"b'\x0bchunked'", b'transfer-encoding: \x0bchunked'),
    'coding of xchunked': bad_coding("b'xchunked'", b'transfer-encoding: xchunked'),
    'coding cut short in the message': bad_coding(
        f"b'{60 * 'x'}'...", b'transfer-encoding: ' + 61 * b'X'),
}

LENGTH_ROWS = {
    'length': good(with_length()),
    'length of 0': good(head(b'content-length: 0'), b''),
    'length in capitals, with whitespace': good(head(b'CONTENT-LENGTH:\t2 \t') + b'ok'),
    'length with zeros before it': good(head(b'content-length: 0002') + b'ok'),
    'lengths that are equal': good(with_length(b'content-length: 2', b'content-length: 2')),
    'lengths that are different': bad(
        with_length(b'content-length: 3'),
        "reading the response head: bad content-length: expected one, got 3 and b'2'"),
    'lengths of which the last is different': bad(
        head(b'content-length: 2', b'content-length: 2', b'content-length: 02',
             b'content-length: 1') + b'ok',
        "reading the response head: bad content-length: expected one, got 2 and b'1'"),
    'lengths of which the second is bad': bad(
        head(b'content-length: 2', b'content-length: x') + b'ok',
        "reading the response head: bad content-length: expected 1 to 20 digits, got b'x'"),
    'length with a plus': bad_length(b'+2', "b'+2'"),
    'length with a minus': bad_length(b'-2', "b'-2'"),
    'length of minus zero': bad_length(b'-0', "b'-0'"),
    'length in hex': bad_length(b'0x2', "b'0x2'"),
    'length with an underscore': bad_length(b'0_2', "b'0_2'"),
    'length with a fraction': bad_length(b'2.0', "b'2.0'"),
    'length with an exponent': bad_length(b'2e0', "b'2e0'"),
    'length as a list': bad_length(b'2, 2', "b'2, 2'"),
    'length with a parameter': bad_length(b'2;a=b', "b'2;a=b'"),
    'length in quotes': bad_length(b'"2"', "b'\"2\"'"),
    'length with a space in it': bad_length(b'2 2', "b'2 2'"),
    'length after a vertical tab': bad_length(b'\x0b2', r"b'\x0b2'"),
    'length in digits that are not ASCII': bad_length('٢'.encode(), r"b'\xd9\xa2'"),
    'length in letters': bad_length(b'two', "b'two'"),
    'length that is empty': bad_length(b'', "b''"),
    'length cut short in the message': bad_length(61 * b'x', f"b'{60 * 'x'}'..."),
    'length that is not reached': ended(
        head(b'content-length: 5') + b'ok',
        f'body: {CLOSED}, 3 bytes before the end that content-length told'),
    'length that is not begun': ended(
        head(b'content-length: 5'),
        f'body: {CLOSED}, 5 bytes before the end that content-length told'),
    'length that nobody could send': ended(
        head(b'content-length: 99999999999999999999') + b'ok',
        f'body: {CLOSED}, 99999999999999999997 bytes before the end that content-length told'),
    'length of 20 digits': good(head(b'content-length: 00000000000000000002') + b'ok'),
    'length of 21 digits': bad_length(b'000000000000000000002', "b'000000000000000000002'"),
    'length of more digits than int() takes': bad_length(b'9' * 5000, f"b'{60 * '9'}'..."),
    'length not given': good(head() + b'ok', kept=False, ends=True),
    'length not given, and no byte': good(head(), b'', kept=False, ends=True),
    'length not given, with keep-alive': good(
        head(b'connection: keep-alive') + b'ok', kept=False, ends=True),
    'length not given, HTTP/1.0': good(head(start=OLD) + b'ok', kept=False, ends=True),
    'length not given, HTTP/1.0 with keep-alive': good(
        head(b'connection: keep-alive', start=OLD) + b'ok', kept=False, ends=True),
    'length not given, and what looks like a response': good(
        head() + OK, OK, kept=False, ends=True),
}

CHUNKS_ROWS = {
    'chunk': good(chunked(b'5\r\nhello\r\n0\r\n\r\n'), b'hello'),
    'chunks': good(chunked(b'5\r\nhello\r\n1\r\n \r\n5\r\nworld\r\n0\r\n\r\n'), b'hello world'),
    'chunks, none': good(chunked(b'0\r\n\r\n'), b''),
    'chunks of one byte': good(chunked(b'1\r\nx\r\n' * 100 + b'0\r\n\r\n'), b'x' * 100),
    'chunk with a size in lower case': good(chunked(b'a\r\n0123456789\r\n0\r\n\r\n'),
                                            b'0123456789'),
    'chunk with a size in upper case': good(chunked(b'B\r\n0123456789-\r\n0\r\n\r\n'),
                                            b'0123456789-'),
    'chunk with a size of two digits': good(
        chunked(b'1F\r\n' + 31 * b'x' + b'\r\n0\r\n\r\n'), 31 * b'x'),
    'chunk with zeros before its size': good(
        chunked(b'0000000000000002\r\nok\r\n0000000000000000\r\n\r\n')),
    'chunk that looks like framing': good(
        chunked(b'c\r\n\r\n0\r\n\r\nhello\r\n0\r\n\r\n'), b'\r\n0\r\n\r\nhello'),
    'chunk of line ends': good(
        chunked(b'4\r\n\r\n\r\n\r\n2\r\n\n\r\r\n0\r\n\r\n'), b'\r\n\r\n\n\r'),
    'chunk of every byte': good(
        chunked(b'100\r\n' + bytes(range(256)) + b'\r\n0\r\n\r\n'), bytes(range(256))),
    'chunk with an extension': good(chunked(b'2;a\r\nok\r\n0;b=c\r\n\r\n')),
    'chunk with extensions': good(chunked(b'2;a=b;c="d;e";f\r\nok\r\n0\r\n\r\n')),
    'chunk with whitespace before its extension': good(
        chunked(b'2 \t; a = b \r\nok\r\n0\r\n\r\n')),
    'chunk with a space after its size': good(chunked(b'2 \r\nok\r\n0 \r\n\r\n')),
    'chunk padded with spaces and tabs': good(
        chunked(b'2    \r\nok\r\n0 \t \r\na: b\r\n\r\n'), trailers=((b'a', b'b'),)),
    'chunk with an empty extension': good(chunked(b'2;\r\nok\r\n0;\r\n\r\n')),
    'chunk with obs-text in its extension': good(chunked(b'2;a="\xff\x01"\r\nok\r\n0\r\n\r\n')),
    'chunk with a long extension': good(
        chunked(b'2;' + 300 * b'a' + b'\r\nok\r\n0;' + 300 * b'b' + b'\r\n\r\n')),
    'trailers': good(
        chunked(b'2\r\nok\r\n0\r\nX-A: b\r\nx-c:d \r\n\r\n'),
        trailers=((b'x-a', b'b'), (b'x-c', b'd')),
        fields=((b'transfer-encoding', b'chunked'),)),
    'trailers after no chunk': good(chunked(b'0\r\na: b\r\n\r\n'), b'', trailers=((b'a', b'b'),)),
    'trailers with duplicates': good(
        chunked(b'0\r\na: b\r\nA: c\r\na: b\r\n\r\n'), b'',
        trailers=((b'a', b'b'), (b'a', b'c'), (b'a', b'b'))),
    'trailers with obs-fold': good(
        chunked(b'0\r\na: b\r\n c\r\n\td\r\n\r\n'), b'', trailers=((b'a', b'b c d'),)),
    'trailers with LF': good(chunked(b'0\r\na: b\nc: d\n\r\n'), b'',
                             trailers=((b'a', b'b'), (b'c', b'd'))),
    'trailers that would be framing': good(
        chunked(b'2\r\nok\r\n0\r\ncontent-length: 9\r\ntransfer-encoding: gzip\r\n\r\n'),
        trailers=((b'content-length', b'9'), (b'transfer-encoding', b'gzip'))),
    'trailers with a bad length': good(
        chunked(b'2\r\nok\r\n0\r\ncontent-length: x\r\n\r\n'),
        trailers=((b'content-length', b'x'),)),
    'trailers with connection: close': good(
        chunked(b'2\r\nok\r\n0\r\nconnection: close\r\nkeep-alive: timeout=0\r\n\r\n'),
        trailers=((b'connection', b'close'), (b'keep-alive', b'timeout=0'))),
    'trailers with connection: keep-alive': good(
        chunked(b'2\r\nok\r\n0\r\nconnection: keep-alive\r\n\r\n', b'connection: close'),
        trailers=((b'connection', b'keep-alive'),), kept=False),
    'trailers after a body with connection: close': good(
        chunked(b'2\r\nok\r\n0\r\na: b\r\n\r\n', b'connection: close'),
        trailers=((b'a', b'b'),), kept=False),
    'chunk with no size': bad_size(b'\r\nok\r\n0\r\n\r\n', r"b'\r\n'"),
    'chunk with an extension only': bad_size(b';a=2\r\nok\r\n0\r\n\r\n', r"b';a=2\r\n'"),
    'chunk with a size that is not hex': bad_size(b'g\r\nok\r\n0\r\n\r\n', r"b'g\r\n'"),
    'chunk with a size of 0x': bad_size(b'0x2\r\nok\r\n0\r\n\r\n', r"b'0x2\r\n'"),
    'chunk with a plus': bad_size(b'+2\r\nok\r\n0\r\n\r\n', r"b'+2\r\n'"),
    'chunk with a minus': bad_size(b'-2\r\nok\r\n0\r\n\r\n', r"b'-2\r\n'"),
    'chunk with an underscore': bad_size(b'0_2\r\nok\r\n0\r\n\r\n', r"b'0_2\r\n'"),
    'chunk after a space': bad_size(b' 2\r\nok\r\n0\r\n\r\n', r"b' 2\r\n'"),
    'chunk with 17 digits': bad_size(
        b'00000000000000002\r\nok\r\n0\r\n\r\n', r"b'00000000000000002\r\n'"),
    'chunk with a space and no extension': bad_size(
        b'2 a=b\r\nok\r\n0\r\n\r\n', r"b'2 a=b\r\n'"),
    'chunk with LF after its size': bad_size(b'2\nok\r\n0\r\n\r\n', r"b'2\n'"),
    'chunk with LF after its extension': bad_size(b'2;a\nok\r\n0\r\n\r\n', r"b'2;a\n'"),
    'chunk with CR after its size': bad_size(b'2\rok\r\n0\r\n\r\n', r"b'2\rok\r\n'"),
    'chunk with two CR after its size': bad_size(b'2\r\r\nok\r\n0\r\n\r\n', r"b'2\r\r\n'"),
    'chunk with whitespace and LF after its size': bad_size(
        b'2 \nok\r\n0\r\n\r\n', r"b'2 \n'"),
    'chunk with whitespace, CR and whitespace after its size': bad_size(
        b'2 \r \r\nok\r\n0\r\n\r\n', r"b'2 \r \r\n'"),
    'chunk with digits after whitespace': bad_size(b'2 2\r\nok\r\n0\r\n\r\n', r"b'2 2\r\n'"),
    'chunk with a vertical tab after its size': bad_size(
        b'2\x0b\r\nok\r\n0\r\n\r\n', r"b'2\x0b\r\n'"),
    'chunk with CR in its extension': bad_size(b'2;a\rb\r\nok\r\n0\r\n\r\n', r"b'2;a\rb\r\n'"),
    'chunk with NUL in its extension': bad_size(b'2;\x00\r\nok\r\n0\r\n\r\n', r"b'2;\x00\r\n'"),
    'chunk with NUL': bad_size(b'2\x00\r\nok\r\n0\r\n\r\n', r"b'2\x00\r\n'"),
    'chunk with a digit that is not ASCII': bad_size(
        '٢\r\nok\r\n0\r\n\r\n'.encode(), r"b'\xd9\xa2\r\n'"),
    'chunk cut short in the message': bad_size(
        b'z' * 70 + b'\r\nok\r\n0\r\n\r\n', f"b'{60 * 'z'}'..."),
    'chunk that is longer than its size': bad_size(
        b'2\r\nokay\r\n0\r\n\r\n', r"b'ay\r\n'", after_chunk=True),
    'chunk that is shorter than its size': bad_size(
        b'4\r\nok\r\n0\r\n\r\n', r"b'0\r\n'", after_chunk=True),
    'chunk with LF after its data': bad_size(
        b'2\r\nok\n0\r\n\r\n', r"b'\n'", after_chunk=True),
    'chunk with two CRLF after its data': bad_size(
        b'2\r\nok\r\n\r\n0\r\n\r\n', r"b'\r\n\r\n'", after_chunk=True),
    'chunk with CR after its data': bad_size(
        b'2\r\nok\r0\r\n\r\n', r"b'\r0\r\n'", after_chunk=True),
    'chunk of which the second has a bad size': bad_size(
        b'2\r\nok\r\nx\r\nok\r\n0\r\n\r\n', r"b'\r\nx\r\n'", after_chunk=True),
    'chunk that is last with LF': bad_size(
        b'2\r\nok\r\n0\n\r\n', r"b'\r\n0\n'", after_chunk=True),
    'trailers with no colon': bad_line(
        chunked(b'2\r\nok\r\n0\r\nab\r\n\r\n'), r"b'ab\r'", phase='body'),
    'trailers with a space before the colon': bad_line(
        chunked(b'0\r\na: b\r\nc : d\r\n\r\n'), r"b'c : d\r'", phase='body'),
    'trailers with NUL': bad_line(
        chunked(b'0\r\na: \x00\r\n\r\n'), r"b'a: \x00\r'", phase='body'),
    'trailers with a bare CR': bad_line(
        chunked(b'0\r\na: b\rc: d\r\n\r\n'), r"b'a: b\rc: d\r'", phase='body'),
    'trailers with obs-fold in the first line': bad_line(
        chunked(b'0\r\n a: b\r\n\r\n'), r"b' a: b\r'", phase='body'),
    'chunks that never come': ended(chunked(b''), f'body: {CLOSED} in a chunk-size line'),
    'chunks that end in a size': ended(chunked(b'5'), f'body: {CLOSED} in a chunk-size line'),
    'chunks that end after a size': ended(
        chunked(b'5\r\n'), f'body: {CLOSED} in a chunk, 5 bytes before its end'),
    'chunks that end in a chunk': ended(
        chunked(b'2\r\nok\r\n5\r\nhel'), f'body: {CLOSED} in a chunk, 2 bytes before its end'),
    'chunks that end in a chunk that nobody could send': ended(
        chunked(b'ffffffffffffffff\r\nok'),
        f'body: {CLOSED} in a chunk, {2 ** 64 - 3} bytes before its end'),
    'chunks that end after a chunk': ended(
        chunked(b'5\r\nhello'), f'body: {CLOSED} in a chunk-size line'),
    'chunks that end between chunks': ended(
        chunked(b'5\r\nhello\r\n'), f'body: {CLOSED} in a chunk-size line'),
    'chunks that end after the last size': ended(
        chunked(b'5\r\nhello\r\n0\r\n'), f'body: {CLOSED} in the trailer section'),
    'chunks that end in the last line end': ended(
        chunked(b'5\r\nhello\r\n0\r\n\r'), f'body: {CLOSED} in the trailer section'),
    'chunks that end in the trailer section': ended(
        chunked(b'5\r\nhello\r\n0\r\na: b\r\n'), f'body: {CLOSED} in the trailer section'),
    'framing just within proportion': good(with_much_framing(66592), b'x' * 66),
    'framing out of proportion': bad(
        with_much_framing(66593), 'reading the response body: the framing of the chunked body '
        'is out of proportion: 66593 bytes for 66 of content'),
    'framing out of proportion long before the end': bad(
        chunked(100 * (b'1;' + b'a' * 996 + b'\r\nx\r\n') + b'0\r\n\r\n'),
        'reading the response body: the framing of the chunked body is out of proportion: '
        '67132 bytes for 66 of content'),
    'framing in proportion to the content': good(
        chunked(b''.join(b'40;' + b'a' * 995 + b'\r\n' + 64 * b'x' + b'\r\n' for _ in range(200))
                + b'0\r\n\r\n'), 200 * 64 * b'x'),
}

PERSISTENCE_ROWS = {
    'connection: close': good(with_length(b'connection: close'), kept=False),
    'connection: close in any case': good(with_length(b'Connection: CLOSE'), kept=False),
    'connection: close first of a list': good(with_length(b'connection: close, x'), kept=False),
    'connection: close last of a list': good(with_length(b'connection: x ,\tclose'), kept=False),
    'connection: close before a tab': good(with_length(b'connection: close\t, x'), kept=False),
    'connection: close among keep-alive': good(
        with_length(b'connection: keep-alive,close,keep-alive'), kept=False),
    'connection: close among empty elements': good(
        with_length(b'connection: ,, close ,'), kept=False),
    'connection: close in the second field': good(
        with_length(b'connection: keep-alive', b'connection: close'), kept=False),
    'connection: close in the first field': good(
        with_length(b'connection: close', b'connection: keep-alive'), kept=False),
    'connection: close after obs-fold': good(with_length(b'connection: x,\r\n close'), kept=False),
    'connection: close with chunks': good(
        chunked(b'2\r\nok\r\n0\r\n\r\n', b'connection: close'), kept=False),
    'connection: close on HTTP/1.2': good(
        with_length(b'connection: close', start=b'HTTP/1.2 200 OK'), kept=False),
    'connection: close on HTTP/1.0': good(
        with_length(b'connection: close', start=OLD), kept=False),
    'connection: closed': good(with_length(b'connection: closed')),
    'connection: x-close': good(with_length(b'connection: x-close')),
    'connection: close in quotes': good(with_length(b'connection: "close"')),
    'connection: a field of another name': good(with_length(b'x-connection: close')),
    'connection: keep-alive': good(with_length(b'connection: keep-alive')),
    'connection: nothing': good(with_length(b'connection:')),
    'connection: keep-alive on HTTP/1.0': good(with_length(b'connection: keep-alive', start=OLD)),
    'connection: keep-alive in any case on HTTP/1.0': good(
        with_length(b'connection: x, Keep-Alive', start=OLD)),
    'connection: keep-alive first of a list on HTTP/1.0': good(
        with_length(b'connection: Keep-Alive, x', start=OLD)),
    'connection: keep-alive between tabs on HTTP/1.0': good(
        with_length(b'connection: x,\tkeep-alive\t, y', start=OLD)),
    'connection: keep-alive between spaces on HTTP/1.0': good(
        with_length(b'connection: x, keep-alive , y', start=OLD)),
    'connection: keep-alive in the second field on HTTP/1.0': good(
        with_length(b'connection: x', b'connection: keep-alive', start=OLD)),
    'connection: keep-alive and close on HTTP/1.0': good(
        with_length(b'connection: keep-alive', b'connection: close', start=OLD), kept=False),
    'connection: keep-alives on HTTP/1.0': good(
        with_length(b'connection: keep-alives', start=OLD), kept=False),
    'connection: x-keep-alive on HTTP/1.0': good(
        with_length(b'connection: x-keep-alive', start=OLD), kept=False),
    'connection: other tokens on HTTP/1.0': good(
        with_length(b'connection: x, y', start=OLD), kept=False),
    'connection: a keep-alive field alone on HTTP/1.0': good(
        with_length(b'keep-alive: timeout=9', start=OLD), kept=False),
    'connection: close in the request': good(
        with_length(), kept=False, sent=((b'connection', b'close'),)),
    'connection: close in the request, in a list': good(
        with_length(), kept=False, sent=((b'Connection', b'TE, Close'), (b'te', b'trailers'))),
    'connection: close in the request, and keep-alive in the response': good(
        with_length(b'connection: keep-alive'), kept=False, sent=((b'connection', b'close'),)),
    'connection: closed in the request': good(with_length(), sent=((b'connection', b'closed'),)),
    # A second is taken off for the way, so these leave no time at all.
    'keep-alive: timeout=0': good(with_length(b'keep-alive: timeout=0'), kept=False),
    'keep-alive: timeout=1': good(with_length(b'keep-alive: timeout=1'), kept=False),
    'keep-alive: timeout=1 among others': good(
        with_length(b'Keep-Alive: max=5, Timeout=1'), kept=False),
    'keep-alive: timeout=1 with whitespace': good(
        with_length(b'keep-alive: timeout = 1;max=5'), kept=False),
    'keep-alive: timeout=1 after a comma': good(
        with_length(b'keep-alive: max=5,timeout=1'), kept=False),
    'keep-alive: timeout=1 after a semicolon': good(
        with_length(b'keep-alive: max=5;timeout=1'), kept=False),
    'keep-alive: timeout=1 with tabs': good(
        with_length(b'keep-alive: max=5,\ttimeout\t=\t1'), kept=False),
    'keep-alive: timeout=1 in quotes': good(with_length(b'keep-alive: timeout="1"'), kept=False),
    'keep-alive: timeout=1 in the second field': good(
        with_length(b'keep-alive: max=5', b'keep-alive: timeout=1'), kept=False),
    'keep-alive: timeout=2': good(with_length(b'keep-alive: timeout=2, max=100')),
    'keep-alive: timeout=1000': good(with_length(b'keep-alive: timeout=1000')),
    'keep-alive: a timeout that no integer holds': good(
        with_length(b'keep-alive: timeout=' + 30 * b'9')),
    'keep-alive: a timeout of more digits than int() takes': good(
        with_length(b'keep-alive: timeout=' + 5000 * b'9')),
    'keep-alive: max alone': good(with_length(b'keep-alive: max=1')),
    'keep-alive: a parameter of another name': good(with_length(b'keep-alive: xtimeout=1')),
    'keep-alive: a timeout that is no number': good(
        with_length(b'keep-alive: timeout, timeout=, timeout=x')),
}

ROWS = {
    **STATUS_LINE_ROWS, **FIELDS_ROWS, **INTERIM_ROWS, **NO_BODY_ROWS, **CODING_ROWS,
    **LENGTH_ROWS, **CHUNKS_ROWS, **PERSISTENCE_ROWS}


class Delivery:
    """The pieces that answer one request, and what became of its connection."""

    def __init__(self, pieces, ends):
        self.pieces = pieces
        self.ends = ends
        self.connections: list[int] = []
        self.first_closed = asyncio.Event()


class Delivering:
    """A script that answers the first request for a path with what is to be delivered to it,
    and later ones with `OK`."""

    def __init__(self):
        self.deliveries: dict[bytes, Delivery] = {}

    def add(self, pieces, ends):
        path = b'/%d' % len(self.deliveries)
        delivery = self.deliveries[path] = Delivery(pieces, ends)
        return path.decode(), delivery

    async def __call__(self, peer):
        delivery = None
        try:
            while True:
                request_head = await peer.read_head()
                delivery = self.deliveries[request_head.split(b' ')[1]]
                delivery.connections.append(peer.index)
                if len(delivery.connections) > 1:
                    await peer.send(OK)
                    continue
                for piece in delivery.pieces:
                    if peer.reader.at_eof():
                        break  # refused already
                    await peer.send(piece)
                if delivery.ends:
                    return
        finally:
            if delivery is not None and peer.index == delivery.connections[0]:
                delivery.first_closed.set()


def kind_of_cause(error):
    """The type of the cause, or that of the standard library which it is a kind of."""
    kinds = type(error.__cause__).__mro__
    return next(kind for kind in kinds if kind.__module__ != 'lowhaio')


async def outcome_of(server, row, pieces, *, ends=None, surplus=False, **options):
    """What a client makes of the bytes, in the form of what is expected in a row."""
    path, delivery = server.script.add(pieces, row.ends if ends is None else ends)
    url = server.origin + path
    # If a connection is closed, then not because it has idled for too long.
    async with pool(keep_alive_timeout=1000, **options) as request:
        try:
            code, fields, body = await request(row.method, url, headers=row.sent)
            content = await buffered(body)
        except lowhaio.HttpError as error:
            text = str(error).split(where(server, row.method.decode()), maxsplit=1)
            outcome = {
                'error': type(error), 'cause': kind_of_cause(error), 'text': text[-1],
                'reused': error.reused, 'response_started': error.response_started}
        else:
            outcome = {'code': code, 'fields': fields, 'body': content,
                       'trailers': body.trailers}
        if surplus:
            await delivery.first_closed.wait()
        assert await get(request, url) == (b'200', ((b'content-length', b'2'),), b'ok')
        if not row.expected['kept']:
            # By the client, or by the server where the row says so.
            await delivery.first_closed.wait()
    first, second = delivery.connections
    return {**outcome, 'kept': first == second}


async def wrong_outcomes(runs):
    """Run many at a time: those that are wrong, with what came and what was expected."""
    # Most of the time would go into the debug mode's stack traces, of thousands of exchanges.
    asyncio.get_running_loop().set_debug(False)
    wrong = {}
    some_at_once = asyncio.Semaphore(64)

    async def run(server, name, expected, *args, **kwargs):
        async with some_at_once:
            outcome = await outcome_of(server, *args, **kwargs)
        if expected.get('fields', ...) is None:
            expected = {**expected, 'fields': outcome.get('fields')}
        if outcome != expected:
            wrong[name] = {key: (outcome.get(key), expected.get(key))
                           for key in {*outcome, *expected}
                           if outcome.get(key) != expected.get(key)}

    async with Server(Delivering()) as server, asyncio.TaskGroup() as group:
        for args, kwargs in runs:
            group.create_task(run(server, *args, **kwargs))
    return wrong


def cut_into_bytes(raw):
    # What is long shows nothing that what is short does not, but for the time it takes.
    step = 1 if len(raw) < 300 else 97
    return [raw[i:i + step] for i in range(0, len(raw), step)]


WAYS = {
    'byte by byte': (cut_into_bytes, {}),
    'cut after each line': (re.compile(rb'[^\n]*\n|[^\n]+').findall, {}),
    'cut in the middle of each CRLF': (re.compile(rb'[^\r]*\r|[^\r]+').findall, {}),
    'read byte by byte': (lambda raw: [raw], {'recv_bufsize': 1}),
    'read in sevens': (lambda raw: [raw], {'recv_bufsize': 7}),
}


LONG = 2000


@on_loops
async def test_a_response_has_the_outcome_of_its_row():
    assert await wrong_outcomes(
        ((name, row.expected, row, [row.raw]), {}) for name, row in ROWS.items()) == {}


@pytest.mark.parametrize('way', WAYS)
@on_one_loop
async def test_a_response_has_the_outcome_of_its_row_however_it_is_cut(way):
    cut, options = WAYS[way]
    assert await wrong_outcomes(
        ((name, row.expected, row, [piece for piece in cut(row.raw) if piece]), options)
        for name, row in ROWS.items()
        if len(row.raw) < LONG or options.get('recv_bufsize') != 1) == {}


# RFC 9112 9.3: the persistence that HTTP/1.1 has is asked for in no request of HTTP/1.0.
TO_HTTP_1_0_ROWS = {
    'nothing said': good(with_length(), kept=False),
    'nothing said, of HTTP/1.2': good(with_length(start=b'HTTP/1.2 200 OK'), kept=False),
    'nothing said, of HTTP/1.0': good(with_length(start=OLD), kept=False),
    'a keep-alive field alone': good(with_length(b'keep-alive: timeout=9'), kept=False),
    'keep-alive': good(with_length(b'connection: keep-alive')),
    'keep-alive, of HTTP/1.0': good(with_length(b'connection: Keep-Alive', start=OLD)),
    'keep-alive in a list': good(with_length(b'connection: x, Keep-Alive')),
    'keep-alive and close': good(
        with_length(b'connection: keep-alive', b'connection: close'), kept=False),
    'keep-alive and chunked': good(
        chunked(b'2\r\nok\r\n0\r\n\r\n', b'connection: keep-alive')),
    'keep-alive asked for, nothing said': good(
        with_length(), kept=False, sent=((b'connection', b'keep-alive'),)),
    'HEAD, nothing said': good(head(b'content-length: 2'), b'', method=b'HEAD', kept=False),
    '204, nothing said': good(head(start=NO_CONTENT), b'', code=b'204', kept=False),
    'a body to the end, and keep-alive': good(
        head(b'connection: keep-alive') + b'ok', kept=False, ends=True),
}


@on_loops
async def test_a_request_of_http_1_0_needs_a_response_that_says_keep_alive():
    assert await wrong_outcomes(
        ((name, row.expected, row, [row.raw]), {'http_version': b'HTTP/1.0'})
        for name, row in TO_HTTP_1_0_ROWS.items()) == {}


@pytest.mark.parametrize('method', [b'GET', b'HEAD'])
@on_loops
async def test_an_unwanted_101_is_refused_also_after_a_wanted_one_of_the_same_bytes(method):
    script = Answering(*(head(b'upgrade: chat', start=SWITCHING),) * 3)
    async with Server(script) as server, pool() as request:
        for _ in range(2):
            code, _, body = await request(method, server.url, headers=UPGRADE)
            assert code == b'101'
            await body.aclose()
        with pytest.raises(HttpDataError) as raised:
            await request(method, server.url)
        assert str(raised.value) == where(server, method.decode()) + (
            'reading the response head: got 101 Switching Protocols, but the request had no '
            'upgrade')
        assert len(server.peers) == 3


EVIL = b'HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil'


@on_loops
async def test_bytes_after_the_end_are_never_delivered_and_close_the_connection():
    surplus = itertools.cycle((EVIL, b'\x00', b'\r\n', b'0\r\n\r\n'))

    def runs():
        for name, row in ROWS.items():
            if 'error' in row.expected or row.ends:
                continue
            expected = {**row.expected, 'kept': False}
            more = next(surplus)
            for way, pieces, options in (
                    ('at once', [row.raw + more], {}),
                    # It must not be taken for the end of a section that ends before.
                    ('at once, an empty line', [row.raw + b'a: b\n\n'], {}),
                    # The first read is filled by the response: what follows is not in it.
                    ('in the next read', [row.raw + more], {'recv_bufsize': len(row.raw)}),
                    ('later', [row.raw, more], {})):
                yield (f'{name}, {way}', expected, row, pieces), {'surplus': True, **options}

    assert await wrong_outcomes(runs()) == {}


@on_loops
async def test_a_response_that_fills_its_read_keeps_its_connection():
    rows = {name: row for name, row in ROWS.items() if row.expected['kept']}
    assert await wrong_outcomes(
        ((name, row.expected, row, [row.raw]), {'recv_bufsize': len(row.raw)})
        for name, row in rows.items()) == {}




def end_of_head(raw):
    """Where the body starts."""
    end = 0
    while True:
        start, end = end, re.compile(rb'\n\r?\n').search(raw, end).end()
        if not re.match(rb'HTTP/1.. 1(?!01)', raw[start:]):
            return end


@on_loops
async def test_a_response_cut_short_is_never_taken_for_a_whole_one():
    rows = {'status line': ROWS['status line'], **INTERIM_ROWS, **NO_BODY_ROWS, **CODING_ROWS,
            **LENGTH_ROWS, **CHUNKS_ROWS}

    def runs():
        for name, row in rows.items():
            if 'error' in row.expected:
                continue
            body_starts = end_of_head(row.raw)
            last = body_starts if row.ends else len(row.raw)
            line_ends = [match.end() for match in re.finditer(b'\n', row.raw)][-4:]
            for cut in {0, 1, last - 2, last - 1, *line_ends}:
                if cut < last:
                    phase = 'head' if cut < body_starts else 'body'
                    expected = ended(b'', phase, started=cut > 0).expected
                    yield (f'{name}, {cut}', expected, row, [row.raw[:cut]]), {'ends': True}

    wrong = await wrong_outcomes(runs())
    # The texts begin with what is expected, and have rows of their own.
    for name, difference in list(wrong.items()):
        text, phase = difference.pop('text')
        if text.startswith(f'{phase}: {CLOSED}') and not difference:
            del wrong[name]
    assert wrong == {}


# Each makes the bytes before the section, the section itself in so many bytes, and what follows
# it. All but those of the first two begin with a head of 47 bytes.
LIMIT = 50
SECTIONS = {
    'head': lambda length: (
        b'', b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\na: '
        + b'b' * (length - 43) + b'\r\n\r\n', b'ok'),
    'head with LF': lambda length: (
        b'', b'HTTP/1.1 200 OK\ncontent-length: 2\na: ' + b'b' * (length - 39) + b'\n\n', b'ok'),
    'head that is all status line': lambda length: (
        b'', b'HTTP/1.1 204 ' + b'x' * (length - 17) + b'\r\n\r\n', b''),
    'interim head': lambda length: (
        CONTINUE, b'HTTP/1.1 103 E\r\na: ' + b'b' * (length - 23) + b'\r\n\r\n', OK),
    'head after an interim one': lambda length: (
        CONTINUE, b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\na: '
        + b'b' * (length - 43) + b'\r\n\r\n', b'ok'),
    'trailer section': lambda length: (
        chunked(b'2\r\nok\r\n0\r\n'), b'a: ' + b'b' * (length - 7) + b'\r\n\r\n', b''),
    'trailer section with LF': lambda length: (
        chunked(b'2\r\nok\r\n0\r\n'), b'a: ' + b'b' * (length - 5) + b'\n\n', b''),
    'first chunk-size line': lambda length: (
        chunked(b''), b'2;' + b'a' * (length - 4) + b'\r\n', b'ok\r\n0\r\n\r\n'),
    'only chunk-size line': lambda length: (
        chunked(b''), b'0;' + b'a' * (length - 4) + b'\r\n', b'\r\n'),
    'second chunk-size line': lambda length: (
        chunked(b'1\r\no\r\n'), b'1;' + b'a' * (length - 4) + b'\r\n', b'k\r\n0\r\n\r\n'),
    'last chunk-size line': lambda length: (
        chunked(b'2\r\nok\r\n'), b'0;' + b'a' * (length - 4) + b'\r\n', b'\r\n'),
}


def limit_rows(section):
    """The rows of a section as long as it may be, of one that is a byte longer, and of one that
    has come as far as it may be without its end, of which nothing more comes."""
    what = next(what for what in ('head', 'trailer section', 'chunk-size line') if what in section)
    before, exact, after = SECTIONS[section](LIMIT)
    _, longer, _ = SECTIONS[section](LIMIT + 1)
    assert (len(exact), len(longer)) == (LIMIT, LIMIT + 1)
    too_long = {'error': HttpHeaderTooLong, 'text':
                f'reading the response {"head" if what == "head" else "body"}: the {what} is '
                f'longer than max_header_length, {LIMIT} bytes'}
    body, code = (b'', b'204') if b'204' in exact else \
        (b'', b'200') if section == 'only chunk-size line' else (b'ok', b'200')
    trailers = () if 'trailer' not in what else ((b'a', b'b' * exact.count(b'b')),)
    return before, {
        'exact': good(before + exact + after, body, code=code, trailers=trailers),
        'longer': bad(before + longer + after, **too_long),
        'endless': bad(before + longer[:LIMIT], **too_long)}


@on_one_loop
async def test_the_limit_of_a_section_is_exact_at_every_cut():
    limited = {'max_header_length': LIMIT}

    def runs(section):
        before, rows = limit_rows(section)
        for name, row in rows.items():
            cuts = range(max(len(before) - 1, 1), min(len(before) + LIMIT + 2, len(row.raw)))
            for cut in cuts if name != 'endless' else cuts[-4:]:
                yield ((f'{section}, {name}, {cut}', row.expected, row,
                        [row.raw[:cut], row.raw[cut:]]), limited)
            for bufsize in 1, LIMIT, 65536:
                yield ((f'{section}, {name}, read by {bufsize}', row.expected, row, [row.raw]),
                       {**limited, 'recv_bufsize': bufsize})
            yield ((f'{section}, {name}, in bytes', row.expected, row, cut_into_bytes(row.raw)),
                   limited)

    assert await wrong_outcomes(itertools.chain.from_iterable(map(runs, SECTIONS))) == {}


@on_loops
async def test_the_limit_is_16384_unless_it_is_given():
    def raw(length):
        return b''.join(SECTIONS['head'](length))

    rows = {
        'bad as well': bad(
            b'x' * 16384 + b'\n\n', 'reading the response head: the head is longer than '
            'max_header_length, 16384 bytes', error=HttpHeaderTooLong),
        'exact': good(raw(16384)),
        'longer': bad(raw(16385), 'reading the response head: the head is longer than '
                      'max_header_length, 16384 bytes', error=HttpHeaderTooLong)}
    assert await wrong_outcomes(
        ((name, row.expected, row, [row.raw]), {}) for name, row in rows.items()) == {}


HOSTILE = {
    'spaces before a value': head(b'a:' + b' ' * 250_000 + b'\x00'),
    'spaces in a value': head(b'a: b' + b' ' * 250_000 + b'\x00'),
    'tabs in a value': head(b'a: b' + b'\t' * 250_000 + b'\x00'),
    'tabs and words in a value': head(b'a: ' + b'b\t' * 125_000 + b'\x00'),
    'spaces before a bare CR': head(b'a: b' + b' ' * 250_000 + b'\rc'),
    'names without a colon': head(*[b'a'] * 80_000),
    'one name without a colon': head(b'a' * 250_000),
    'folds': head(b'a: b' + b'\r\n ' * 80_000 + b'\x00'),
    'folds of spaces': head(b'a: b' + (b' ' * 500 + b'\r\n' + b' ' * 500) * 250 + b'\x00'),
    'folds in a first line': head(b' ' + b'\n ' * 125_000),
    'empty elements of connection': head(b'connection: ' + b', ' * 125_000, b'a'),
    'spaces in connection': head(b'connection: a,' + b' ' * 250_000 + b'b', b'content-length: x'),
    'close that is none': head(b'connection: ' + b'close ' * 40_000, b'content-length: x'),
    'timeouts that are none': head(
        b'keep-alive: ' + b'timeout ' * 30_000, b'content-length: x'),
    'spaces after a timeout': head(
        b'keep-alive: timeout' + b' ' * 250_000, b'content-length: x'),
    'a status line': head(start=b'HTTP/1.1 200 ' + b' ' * 250_000 + b'\x00'),
    'spaces after a size': chunked(b'5' + b' ' * 250_000 + b'\r\n'),
    'an extension': chunked(b'5;' + b' ;' * 125_000 + b'\x00\r\n'),
    'trailers': chunked(b'0\r\na: ' + b'b ' * 125_000 + b'\x00\r\n\r\n'),
}


@on_loops
async def test_hostile_bytes_take_a_time_that_is_linear_in_them():
    # All of them take some hundredths of a second. If the time were the square, one would take
    # a minute, or hours.
    started = time.thread_time()
    script = Answering(*HOSTILE.values())
    async with Server(script) as server, pool(
            max_header_length=2 ** 20, recv_bufsize=2 ** 20) as request:
        for _ in HOSTILE:
            with pytest.raises(HttpDataError):
                await get(request, server.url)
    assert time.thread_time() - started < 5


# --------------------------------------------------------------- what is remembered of heads

SECRET_IN = {
    'set-cookie': ('/', b'set-cookie: a=SECRET'),
    'Set-Cookie among others': ('/', b'server: a\r\nSet-Cookie: a=SECRET; Secure\r\nage: 1'),
    'location': ('/', b'location: https://a.example/?signature=SECRET'),
    'a challenge': ('/', b'www-authenticate: Digest realm="a", nonce="SECRET"'),
    'authentication-info': ('/', b'authentication-info: nextnonce="SECRET"'),
    'a token in a field of its own': ('/', b'x-subject-token: SECRET'),
    'a folded line': ('/', b'set-cookie: a=b;\r\n c=SECRET'),
    'a long line': ('/', b'server: ' + 1024 * b'a' + b'SECRET'),
    'a long reason': ('/', 1024 * b'a' + b'SECRET'),
    'the query': ('/?signature=SECRET', b'age: 1'),
    'the fragment': ('/#access_token=SECRET', b'age: 1'),
    'a long path': ('/' + 256 * 'a' + 'SECRET', b'age: 1'),
    'a refused URL': ('@user:SECRET@a.example/', b'age: 1'),
    # Not all of it is remembered; but it is forgotten with the pool.
    'the path': ('/SECRET', b'age: 1'),
    'a trailer': ('/', b'transfer-encoding: chunked\r\n\r\n0\r\nset-cookie: a=SECRET'),
    'a repeated field': ('/', b'via: SECRET'),
}
KEPT_WITH_THE_POOL = {'the path', 'a trailer', 'a repeated field'}

KEEPING = """
import asyncio, contextlib, gc, json, socket, sys
from lowhaio import HttpError, Pool, buffered

def holders(backwards):
    # Nothing else than what lowhaio keeps has the secret forwards
    gc.collect()
    text = backwards[::-1]
    data = text.encode()
    found = set()
    for holder in gc.get_objects():
        # What a module refers to is in its dictionary. In CPython 3.12, that of asyncio also tells
        # of futures that were freed, and to touch those breaks the next collection
        for held in () if type(holder) is type(gc) else gc.get_referents(holder):
            if isinstance(held, str) and text in held or isinstance(held, bytes) and data in held:
                found.add(type(holder).__name__)
    return sorted(found)

async def main(secret_in):
    ends = []

    async def get_connection(*_):
        ours, theirs = socket.socketpair()
        ends.append(ours)
        return theirs

    def answer(line):
        end = ends[-1]
        end.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while end.recv(65536):
                pass
        start = b'' if b':' in line else b' ' + line
        end.send(b'HTTP/1.1 200' + start + (b'' if start else b'\\r\\n' + line) + (
            b'' if b'chunked' in line else b'\\r\\ncontent-length: 0') + b'\\r\\n\\r\\n')

    async def exchange(request, path, line, backwards):
        asking = request(b'GET', 'http://name.test' + path.replace('SECRET', backwards[::-1]))
        task = asyncio.ensure_future(asking)
        for _ in range(5):
            await asyncio.sleep(0)
        if not task.done():
            answer(line.encode().replace(b'SECRET', backwards[::-1].encode()))
        with contextlib.suppress(HttpError):
            await buffered((await task)[2])

    kept = {}
    for number, (name, (path, line)) in enumerate(secret_in.items()):
        backwards = f'{number:02}terces'
        request, close = Pool(get_connection=get_connection)
        for _ in range(3):
            await exchange(request, path, line, backwards)
        with_pool = holders(backwards)
        await close()
        del request, close
        kept[name] = with_pool, holders(backwards)
    return kept

if sys.argv[1] == 'uvloop':
    from uvloop import new_event_loop
else:
    new_event_loop = None
with asyncio.Runner(loop_factory=new_event_loop) as runner:
    print(json.dumps(runner.run(main(json.loads(sys.argv[2])))))
"""


@pytest.mark.parametrize('loop_name', LOOPS)
def test_secrets_are_not_remembered_and_nothing_outlives_the_pool(loop_name):
    given = {name: (path, line.decode()) for name, (path, line) in SECRET_IN.items()}
    printed = subprocess.run(
        [sys.executable, '-c', KEEPING, loop_name, json.dumps(given)], check=True,
        env={**os.environ, 'PYTHONPATH': str(HERE)}, stdout=subprocess.PIPE, timeout=PATIENCE,
    ).stdout
    kept = json.loads(printed)
    assert {name: places for name, places in kept.items()
            if places != [[], []] and name not in KEPT_WITH_THE_POOL} == {}
    assert {name: places[1] for name, places in kept.items()} == {name: [] for name in SECRET_IN}


def heads_that_fill_memory(origin):
    """Each is as large as what is remembered may be, or larger, and none comes again."""
    for number in range(200):
        mark = b'%d-%d' % (origin, number)
        yield head(b'server: ' + mark, b'via: ' + mark.ljust(240, b'a'), b'content-length: 0',
                   start=b'HTTP/1.1 200 ' + mark.ljust(200, b'a'))
        yield head(b'server: ' + mark.ljust(14_000, b'a'), b'content-length: 0')


@on_one_loop
async def test_what_is_remembered_is_bounded_in_bytes():
    asyncio.get_running_loop().set_debug(False)

    async def fill(request, origins):
        for origin in origins:
            for number, raw in enumerate(heads_that_fill_memory(origin)):
                script.responses = [raw]
                query = '' if number % 4 else '?' + 'q' * 2000
                path = 'p' * (200 if number % 8 else 2000)
                await get(request, f'http://{origin}.test:{number % 3 + 80}/{number}{path}{query}')

    async def get_connection(scheme, host, port):
        sock = socket.create_connection(('127.0.0.1', server.port))
        sock.setblocking(False)
        return sock

    script = Answering(OK)
    async with Server(script) as server, pool(
            get_connection=get_connection, keep_alive_timeout=0) as request:
        await fill(request, range(2))  # what is made at first
        tracemalloc.start()
        try:
            await fill(request, range(2, 5))
            script.heads.clear()
            script.bodies.clear()
            server.peers.clear()
            server.tasks.clear()
            gc.collect()
            taken = tracemalloc.take_snapshot().filter_traces(
                [tracemalloc.Filter(True, lowhaio.__file__)])
        finally:
            tracemalloc.stop()
    # 512 of each: URLs, status lines and field lines, each 256 bytes at most and some overhead.
    assert sum(statistic.size for statistic in taken.statistics('filename')) < 1_500_000


# ------------------------------------------------------------------ the body of a response


UNFINISHED = b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nok'


def holding(*pieces: bytes):
    """A script that sends the pieces, and then nothing until the client closes."""
    async def script(peer):
        await peer.read_head()
        await peer.send(*pieces)
        await peer.closed()
        script.closed += 1

    script.closed = 0
    return script


async def failure(awaitable) -> lowhaio.HttpError:
    with pytest.raises(lowhaio.HttpError) as info:
        await awaitable
    return info.value


def where(server, method='GET'):
    """How each message begins."""
    return f'{method} {server.origin} (peer 127.0.0.1:{server.port}), '


@on_loops
async def test_an_error_tells_method_origin_and_peer_and_never_the_path():
    async with Server(Answering(b'hello\r\n\r\n')) as server, pool() as request:
        for method in b'HEAD', b'X-Y':
            error = await failure(request(method, server.origin + '/secret?secret#secret'))
            assert type(error) is HttpDataError
            assert str(error) == (
                f'{method.decode()} http://127.0.0.1:{server.port} (peer 127.0.0.1:{server.port})'
                ', reading the response head: bad status line: expected HTTP/1.x, '
                "a space, three digits and a reason, got b'hello\\r'")


ON_A_REUSED_CONNECTION = {
    'no byte': (b'', HttpConnectionClosedError, EOFError, False,
                f'head: {CLOSED}, after no byte of it'),
    'a part of the head': (b'HTTP', HttpConnectionClosedError, EOFError, True,
                           f"head: {CLOSED}, after b'HTTP'"),
    'a bad field': (head(b'a'), HttpDataError, ValueError, True, 'head: bad field line: expected '
                    r"""a token, ":" and a value, got b'a\r'"""),
    'a part of the body': (
        UNFINISHED, HttpConnectionClosedError, EOFError, True,
        f'body: {CLOSED}, 98 bytes before the end that content-length told'),
}


@pytest.mark.parametrize('second', ON_A_REUSED_CONNECTION)
@on_loops
async def test_an_error_tells_that_the_connection_had_served_before(second):
    raw, kind, cause, response_started, text = ON_A_REUSED_CONNECTION[second]

    async def script(peer):
        await peer.read_head()
        await peer.send(CONTINUE + OK)
        await peer.read_head()
        await peer.send(raw)

    async with Server(script) as server, pool() as request:
        await get(request, server.url)
        error = await failure(get(request, server.url))
        assert (type(error), type(error.__cause__)) == (kind, cause)
        assert (error.reused, error.response_started) == (True, response_started)
        assert str(error) == f'{where(server)}reading the response {text}'
        assert len(server.peers) == 1


@on_loops
async def test_a_reset_is_an_end_too():
    cases = [(b'', 'head'), (b'HTTP/1.1', 'head'), (UNFINISHED, 'body'), (head(), 'body')]

    async def script(peer):
        await peer.read_head()
        await peer.send(cases[peer.index][0])
        peer.reset()

    async with Server(script) as server, pool() as request:
        for sent, phase in cases:
            error = await failure(get(request, server.url))
            assert (type(error), type(error.__cause__)) == (
                HttpConnectionClosedError, ConnectionResetError)
            assert (error.reused, error.response_started) == (False, bool(sent))
            assert re.fullmatch(
                re.escape(f'{where(server)}reading the response {phase}: ConnectionResetError: ')
                + r'\[Errno \d+\] Connection reset by peer' + re.escape(MAY_BE_TLS * (not sent)),
                str(error))


@on_loops
async def test_a_body_is_its_own_iterator_and_stays_ended():
    async with Server(Answering(OK)) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        assert aiter(body) is body
        assert [chunk async for chunk in body] == [b'ok']
        for _ in range(2):
            with pytest.raises(StopAsyncIteration):
                await anext(body)
        assert await buffered(body) == b''
        await read_before(body)
        with pytest.raises(StopAsyncIteration):
            await anext(body)
        await read_before(body)


FRAMINGS = {
    'length': (b'content-length: 12', lambda piece: piece, b'', True),
    'chunks': (b'transfer-encoding: chunked', lambda piece: b'%x\r\n%b\r\n' % (len(piece), piece),
               b'0\r\nA: b\r\n\r\n', True),
    'end': (b'connection: close', lambda piece: piece, b'', False),
}


@pytest.mark.parametrize('framing', FRAMINGS)
@on_loops
async def test_a_body_yields_what_has_come_and_no_empty_chunks(framing):
    field, encoded, end, is_kept = FRAMINGS[framing]
    wanted = asyncio.Queue()

    async def script(peer):
        await peer.read_head()
        await peer.send(head(field))
        while (piece := await wanted.get()):
            await peer.send(*cut_into_bytes(encoded(piece)))
        await peer.send(*cut_into_bytes(end))
        if is_kept:
            await peer.read_head()
            await peer.send(OK)

    async with Server(script) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        for piece in b'hell', b'o, w', b'orld':
            wanted.put_nowait(piece)
            for byte in piece:
                # One at a time as they came, each before the next is there.
                assert await anext(body) == bytes([byte])
            assert body.trailers == ()
        wanted.put_nowait(b'')
        with pytest.raises(StopAsyncIteration):
            await anext(body)
        assert body.trailers == (((b'a', b'b'),) if framing == 'chunks' else ())
        if is_kept:
            await get(request, server.url)
            assert len(server.peers) == 1


@on_loops
async def test_a_chunk_is_no_longer_than_one_read():
    raw = head(b'content-length: 1000') + bytes(range(250)) * 4
    async with Server(Answering(raw)) as server, pool(recv_bufsize=100) as request:
        _, _, body = await request(b'GET', server.url)
        chunks = [chunk async for chunk in body]
    assert b''.join(chunks) == bytes(range(250)) * 4
    assert max(map(len, chunks)) == 100


@on_loops
async def test_buffered_takes_what_is_left_of_any_iterator_of_bytes():
    async def chunks():
        for chunk in (b'a', b'', bytearray(b'b'), memoryview(b'c')):
            yield chunk

    assert await buffered(chunks()) == b'abc'
    assert await buffered(empty_async_iterator()) == b''
    raw = chunked(b'2\r\nok\r\n') + b'1\r\n!\r\n0\r\n\r\n'
    async with Server(Answering(raw)) as server:
        async with pool(recv_bufsize=len(raw) - 11) as request:
            _, _, body = await request(b'GET', server.url)
            assert await anext(body) == b'ok'
            assert await buffered(body) == b'!'
            await read_before(body)
        async with pool() as request:
            _, _, body = await request(b'GET', server.url)
            assert await buffered(body) == b'ok!'
            await read_before(body)


WHOLE = {
    'length': OK,
    'chunks': chunked(b'2\r\nok\r\n0\r\na: b\r\n\r\n'),
    'no body': head(start=NO_CONTENT),
}


OK_AGAIN = OK[:-2] + b'no'
AGAIN = {
    # Method, response, code, body: of one origin, whose last head is remembered.
    'the same': [(b'GET', OK, b'200', b'ok'), (b'GET', OK_AGAIN, b'200', b'no')],
    'for another method': [
        (b'GET', OK, b'200', b'ok'), (b'HEAD', OK[:-2], b'200', b''), (b'GET', OK, b'200', b'ok')],
    'after an interim one': [
        (b'GET', OK, b'200', b'ok'), (b'GET', CONTINUE + OK_AGAIN, b'200', b'no')],
    'the other line end': [
        (b'GET', OK, b'200', b'ok'), (b'GET', OK.replace(b'\r\n', b'\n'), b'200', b'ok')],
    'a longer one': [
        (b'GET', with_length(), b'200', b'ok'), (b'GET', with_length(b'a: b'), b'200', b'ok'),
        (b'GET', with_length(), b'200', b'ok')],
    'another code': [
        (b'GET', with_length(), b'200', b'ok'),
        (b'GET', with_length(start=b'HTTP/1.1 404 OK'), b'404', b'ok')],
    'chunked': [
        (b'GET', chunked(b'2\r\nok\r\n0\r\n\r\n'), b'200', b'ok'),
        (b'GET', chunked(b'1\r\n!\r\n0\r\n\r\n'), b'200', b'!')],
}


@pytest.mark.parametrize('exchanges', AGAIN.values(), ids=AGAIN)
@pytest.mark.parametrize('is_cut', [False, True], ids=['whole', 'byte by byte'])
@pytest.mark.parametrize('is_kept', [False, True], ids=['many connections', 'one connection'])
@on_one_loop
async def test_a_head_that_comes_again_is_taken_for_what_it_is(exchanges, is_cut, is_kept):
    responses = iter(exchanges)

    async def script(peer):
        for _, response, _, _ in responses:
            await peer.read_head()
            await peer.send(*([bytes([byte]) for byte in response] if is_cut else [response]))
            if not is_kept:
                break
        assert await peer.closed() == b''

    options = {} if is_kept else {'keep_alive_timeout': 0}
    async with Server(script) as server, pool(**options) as request:
        for method, response, code, content in exchanges:
            got, headers, body = await request(method, server.url)
            assert (got, await buffered(body)) == (code, content)
            assert (b'a', b'b') in headers or b'a: b' not in response
        assert len(server.peers) == (1 if is_kept else len(exchanges))


@on_loops
async def test_more_different_fields_than_are_remembered():
    fields = tuple((b'a-%d' % number, b'%d' % number) for number in range(1000))
    raw = head(*(b'%b: %b' % field for field in fields), b'content-length: 0')
    async with Server(Answering(raw)) as server, pool(max_header_length=len(raw)) as request:
        for _ in range(2):
            _, headers, _ = await request(b'GET', server.url)
            assert headers == (*fields, (b'content-length', b'0'))


@pytest.mark.parametrize('framing', WHOLE)
@on_loops
async def test_a_body_that_came_with_its_head_has_released_its_connection(framing):
    script = Answering(WHOLE[framing], OK)
    async with Server(script) as server, pool() as request:
        _, _, first = await request(b'GET', server.url)
        assert first.trailers == (((b'a', b'b'),) if framing == 'chunks' else ())
        _, _, second = await request(b'GET', server.url)
        assert script.connections == [0, 0]
        assert await buffered(second) == b'ok'
        assert await buffered(first) == (b'' if framing == 'no body' else b'ok')


@on_loops
async def test_a_connection_is_released_at_the_last_byte_parsed():
    async def script(peer):
        await peer.read_head()
        await peer.send(OK[:-1], OK[-1:])
        await peer.read_head()
        await peer.send(OK)

    async with Server(script) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        assert await anext(body) == b'o'
        assert await anext(body) == b'k'
        await get(request, server.url)  # the first body has not been asked for its end
        assert len(server.peers) == 1
        with pytest.raises(StopAsyncIteration):
            await anext(body)


@on_loops
async def test_a_body_that_came_whole_can_be_closed_or_dropped_without_harm():
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        del body
        _, _, body = await request(b'GET', server.url)
        assert await anext(body) == b'ok'
        await body.aclose()
        await body.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(body)
        # Nor does it harm who has the connection now.
        _, _, first = await request(b'GET', server.url)
        _, _, second = await request(b'GET', server.url)
        await first.aclose()
        del first
        assert await buffered(second) == b'ok'
        await get(request, server.url)
    assert script.connections == [0, 0, 0, 0, 0]


WAS_CLOSED = 'ConnectionAbortedError: the response body was closed before its end'


async def closed(server, *readings, method='GET'):
    """Each tells the same: that the body was closed before its end."""
    errors = [await failure(reading) for reading in readings]
    for error in errors:
        assert error is errors[0]
        assert (type(error), type(error.__cause__)) == (HttpDataError, ConnectionAbortedError)
        assert str(error) == f'{where(server, method)}reading the response body: {WAS_CLOSED}'
        assert error.response_started


@on_loops
async def test_a_body_closed_unfinished_closes_its_connection():
    for raw in (UNFINISHED, head(b'content-length: 5'), chunked(b'2\r\nok\r\n'), head(),
                chunked(b'0\r\n')):
        script = holding(raw)
        async with Server(script) as server, pool() as request:
            _, _, body = await request(b'GET', server.url)
            for _ in range(2):
                await body.aclose()
                await closed(server, anext(body), buffered(body), anext(body))
                assert body.trailers == ()
            await until(lambda script=script: script.closed)


async def all_of(body):
    """By an `async for`, as `buffered` reads it."""
    return b''.join([chunk async for chunk in body])


@SCHEMES
@pytest.mark.parametrize('read', [anext, all_of, buffered])
@on_loops
async def test_a_body_closed_before_it_was_read_is_never_taken_for_an_empty_one(scheme, read):
    for raw in (OK, OK[:-2], UNFINISHED, chunked(b'2\r\nok\r\n'),
                chunked(b'2\r\nok\r\n0\r\n\r\n'), head() + b'ok'):
        with row(raw):
            async with Server(holding(raw), context_of(scheme)) as server, pool(
                    get_ssl_context=trusting) as request:
                _, _, body = await request(b'GET', server.url)
                await body.aclose()
                await closed(server, read(body), read(body), anext(body), buffered(body))


@pytest.mark.parametrize('read', [all_of, buffered])
@on_loops
async def test_a_body_closed_as_its_bytes_come_fails_its_reader(read):
    """In whatever turn: also if the loop has read them already, but the reader has not gone on."""
    sockets = Sockets()

    async def script(peer):
        await peer.read_head()
        await peer.send(UNFINISHED)
        await peer.closed()

    outcomes = []
    for more, number in itertools.product((b'x', b'x' * 98), range(6)):
        with row(f'{len(more)} bytes, {number} turns'):
            async with Server(script) as server, pool(get_sock=sockets) as request:
                _, _, body = await request(b'GET', server.url)
                reading = asyncio.create_task(read(body))
                await turns(5)
                sockets.send_to_last(server.peers[0], more)
                await turns(number)
                outcomes.append(reading.done())
                await body.aclose()
                if reading.done():
                    assert await reading == b'ok' + more
                else:
                    await closed(server, reading, buffered(body), anext(body))
                # It is not one that could be used again.
                assert sockets.socks[-1].fileno() == -1 or reading.done()
    # Only all of them end it.
    assert outcomes[:6] == [False] * 6
    assert outcomes[6:] == sorted(outcomes[6:])
    assert (outcomes[6], outcomes[-1]) == (False, True)


@SCHEMES
@on_loops
async def test_a_body_closed_while_its_reader_has_a_chunk_fails_it(scheme):
    async def read():
        async for chunk in body:
            chunks.append(chunk)
            await goes_on.wait()

    for raw in (UNFINISHED, UNFINISHED + b'x' * 90, chunked(b'2\r\nok\r\n'), head() + b'ok'):
        chunks, goes_on = [], asyncio.Event()
        async with Server(holding(raw), context_of(scheme)) as server, pool(
                get_ssl_context=trusting) as request:
            _, _, body = await request(b'GET', server.url)
            reading = asyncio.create_task(read())
            await until(lambda: chunks)  # noqa: B023
            await body.aclose()
            goes_on.set()
            await closed(server, reading, buffered(body))


@on_loops
async def test_a_body_that_was_read_stays_one_that_ended_when_it_is_closed():
    async with Server(Answering(OK)) as server, pool() as request:
        for read in all_of, buffered:
            _, _, body = await request(b'GET', server.url)
            assert await read(body) == b'ok'
            await body.aclose()
            with pytest.raises(StopAsyncIteration):
                await anext(body)
            if read is buffered:
                await read_before(body)
            else:
                assert await buffered(body) == b''
        # There was nothing to be read.
        _, _, body = await request(b'HEAD', server.url)
        await body.aclose()
        assert await buffered(body) == b''


@on_loops
async def test_a_body_closed_after_its_connection_serves_another_tells_of_its_own_request():
    async with Server(Answering(OK)) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        await request(b'POST', server.url)
        await body.aclose()
        await closed(server, anext(body), buffered(body))
        assert (await get(request, server.url))[2] == b'ok'


@on_loops
async def test_a_cancellation_of_a_reader_whose_body_is_closed_wins():
    script = holding(UNFINISHED)
    async with Server(script) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        reading = asyncio.create_task(buffered(body))
        await turns(5)
        await body.aclose()
        reading.cancel('why')
        with pytest.raises(asyncio.CancelledError) as caught:
            await reading
        assert caught.value.args == ('why',)
        await closed(server, anext(body))


@on_loops
async def test_a_body_closed_while_it_is_read_fails_the_reading():
    script = holding(UNFINISHED)
    async with Server(script) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        reading = asyncio.create_task(buffered(body))
        await turns(5)
        await body.aclose()
        await closed(server, reading)
        await until(lambda: script.closed)


@on_loops
async def test_a_body_that_failed_fails_the_same_again():
    raw = chunked(b'2\r\nok\r\n'), b'x\r\n'
    script = holding(*raw)
    async with Server(script) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        assert await anext(body) == b'ok'
        error = await failure(anext(body))
        assert (type(error), type(error.__cause__)) == (HttpDataError, ValueError)
        assert await failure(anext(body)) is error
        assert await failure(buffered(body)) is error
        assert body.trailers == ()
        await body.aclose()
        assert await failure(anext(body)) is error
        await until(lambda: script.closed)


async def refused(server, *readings):
    for reading in readings:
        error = await failure(reading)
        assert (type(error), type(error.__cause__)) == (HttpDataError, RuntimeError)
        assert str(error) == (f'{where(server)}reading the response body: RuntimeError: '
                              'the body is being read by another task')


@SCHEMES
@on_loops
async def test_a_second_reader_at_the_same_time_is_refused_and_the_first_reads_on(scheme):
    async def script(peer):
        await peer.read_head()
        await peer.send(head(b'content-length: 6') + b'ok')
        for piece in b'ay', b'!!':
            await goes_on.wait()
            goes_on.clear()
            await peer.send(piece)
        await peer.read_head()
        await peer.send(OK)

    goes_on = asyncio.Event()
    async with Server(script, context_of(scheme)) as server, pool(
            get_ssl_context=trusting) as request:
        _, _, body = await request(b'GET', server.url)
        assert await anext(body) == b'ok'
        for piece in b'ay', b'!!':
            first = asyncio.create_task(anext(body))
            await turns(5)
            await refused(server, anext(body), buffered(body), all_of(body))
            goes_on.set()
            assert await first == piece
        with pytest.raises(StopAsyncIteration):
            await anext(body)
        # Its connection has been released.
        assert (await get(request, server.url))[2] == b'ok'
        assert len(server.peers) == 1


class Sockets:
    """A `get_sock` that keeps what it returns, to know when bytes have come to the client."""

    def __init__(self, bufsize=None):
        self.bufsize = bufsize
        self.socks = []

    def __call__(self, family):
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        if self.bufsize is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.bufsize)
        self.socks.append(sock)
        return sock

    def send_to_last(self, peer, data):
        """Send, without a turn of the loop, and be sure that it has come."""
        os.write(peer.sock.fileno(), data)
        assert select.select([self.socks[-1]], [], [], PATIENCE)[0]


@on_loops
async def test_a_body_read_by_two_tasks_at_once_never_harms_another_request():
    sockets = Sockets()

    async def script(peer):
        await peer.read_head()
        if peer.index == 0:
            await peer.send(head(b'content-length: 4') + b'ok')
            await peer.read_head()
        await peer.send(OK)

    async with Server(script) as server, pool(get_sock=sockets) as request:
        _, _, body = await request(b'GET', server.url)
        assert await anext(body) == b'ok'
        first = asyncio.create_task(anext(body, None))
        await turns(3)
        sockets.send_to_last(server.peers[0], b'ay')
        await refused(server, anext(body))
        assert await first == b'ay'
        assert (await get(request, server.url))[2] == b'ok'
        assert len(server.peers) == 1


@contextlib.asynccontextmanager
async def body_before_a_turn():
    """A body of which so much was read without a wait that the next reading begins with a turn
    for others. Nothing more comes."""
    sockets = Sockets()
    length = 256 * 1024
    has_head = threading.Event()

    def serve(listener):
        peer, _ = listener.accept()
        with peer:
            peer.recv(1000)
            peer.sendall(head(b'content-length: %d' % (length + 1)))
            has_head.wait(PATIENCE)
            peer.sendall(b'x' * length)
            peer.recv(1000)

    with socket.create_server(('127.0.0.1', 0)) as listener:
        async with pool(get_sock=sockets) as request:
            serving = asyncio.create_task(asyncio.to_thread(serve, listener))
            _, _, body = await request(
                b'GET', f'http://127.0.0.1:{listener.getsockname()[1]}/')
            has_head.set()
            left = length
            while left:
                # So that it does not have to wait in the loop, which gives turns too.
                select.select(sockets.socks, [], [], PATIENCE)
                left -= len(await anext(body))
            try:
                yield body
            finally:
                await body.aclose()
                await serving


@on_loops
async def test_a_body_read_by_two_tasks_at_once_never_leaves_one_waiting_forever():
    async with body_before_a_turn() as body:
        readings = [asyncio.create_task(anext(body)) for _ in range(2)]
        await turns(5)
        await body.aclose()
        outcomes = await asyncio.gather(*readings, return_exceptions=True)
    assert [type(outcome.__cause__) for outcome in outcomes] == [
        ConnectionAbortedError, RuntimeError]


@on_loops
async def test_a_body_closed_during_the_turn_of_others_fails_the_reading():
    async with body_before_a_turn() as body:
        reading = asyncio.create_task(anext(body))
        await turns(1)
        await body.aclose()
        error = await failure(reading)
        assert (type(error), type(error.__cause__)) == (HttpDataError, ConnectionAbortedError)


@on_loops
async def test_bytes_that_came_before_a_request_are_never_its_response(monkeypatch):
    sockets = Sockets()
    loop = asyncio.get_running_loop()
    now = loop.time()
    async with Server(Answering(OK)) as server, pool(get_sock=sockets) as request:
        # However fast the next request is: no time passes.
        monkeypatch.setattr(loop, 'time', lambda: now)
        await get(request, server.url)
        sockets.send_to_last(server.peers[0], EVIL)
        assert (await get(request, server.url))[2] == b'ok'


@on_loops
async def test_a_cancelled_reading_closes_the_connection():
    script = holding(UNFINISHED)
    async with Server(script) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        assert await anext(body) == b'ok'
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await anext(body)
        assert asyncio.current_task().cancelling() == 0
        await until(lambda: script.closed)
        # What there was is not to be taken for the whole.
        for reading in anext(body), buffered(body):
            error = await failure(reading)
            assert (type(error), type(error.__cause__)) == (HttpDataError, asyncio.CancelledError)
            assert str(error) == f'{where(server)}reading the response body: CancelledError'


@pytest.mark.parametrize('what', ['bytes', 'reset'])
@on_loops
async def test_a_cancellation_wins_over_data_that_comes_in_the_same_tick(what):
    sockets = Sockets()
    with socket.create_server(('127.0.0.1', 0)) as listener:
        listener.setblocking(False)
        url = f'http://127.0.0.1:{listener.getsockname()[1]}/'
        async with pool(get_sock=sockets) as request:
            requesting = asyncio.create_task(request(b'GET', url))
            peer, _ = await asyncio.get_running_loop().sock_accept(listener)
            with peer:
                await asyncio.get_running_loop().sock_recv(peer, 1000)
                peer.sendall(UNFINISHED)
                _, _, body = await requesting
                assert await anext(body) == b'ok'
                reading = asyncio.create_task(anext(body))
                await turns(3)
                if what == 'bytes':
                    peer.sendall(b'more')
                else:
                    peer.setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
                    peer.close()
                assert select.select(sockets.socks, [], [], PATIENCE)[0]
                # In its next turn the loop finds that, after this task has gone on.
                await turns(1)
                reading.cancel()
                outcome, = await asyncio.gather(reading, return_exceptions=True)
                assert isinstance(outcome, asyncio.CancelledError)
                assert sockets.socks[0].fileno() == -1


@on_loops
async def test_a_connection_that_is_reset_while_it_idles_is_closed():
    sockets = Sockets()
    async with Server(Answering(OK)) as server, pool(get_sock=sockets) as request:
        await get(request, server.url)
        server.peers[0].reset()
        await until(lambda: sockets.socks[0].fileno() == -1)
        await get(request, server.url)
        assert len(server.peers) == 2


@pytest.fixture
def only_full_collections():
    """So that what is collected in the end is collected in the order of its creation."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def drop(box):
    box.clear()


def drop_in_a_cycle(box):
    body = box.pop()
    cycle = [body]
    cycle.append(cycle)
    del body, cycle
    gc.collect()


@on_loops
async def test_a_body_dropped_unfinished_closes_its_connection():
    script = holding(UNFINISHED)
    ways = list(itertools.product((drop, drop_in_a_cycle), (False, True), (0, 1)))
    async with Server(script) as server, pool() as request:
        for how, in_thread, chunks in ways:
            closed = script.closed
            box = [(await request(b'GET', server.url))[2]]
            for _ in range(chunks):
                assert await anext(box[0]) == b'ok'
            if in_thread:
                await asyncio.to_thread(how, box)
            else:
                how(box)
            await until(lambda closed=closed: script.closed > closed)
        assert len(server.peers) == len(ways)


@on_loops
async def test_a_body_dropped_in_another_thread_is_closed_in_that_of_its_loop():
    threads = []

    class Socket(socket.socket):
        def close(self):
            threads.append(threading.current_thread())
            super().close()

    def get_sock(family):
        sock = Socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        return sock

    script = holding(UNFINISHED)
    async with Server(script) as server, pool(get_sock=get_sock) as request:
        box = [(await request(b'GET', server.url))[2]]
        await asyncio.to_thread(drop, box)
        await until(lambda: script.closed)
    assert threads == [threading.current_thread()]


@on_loops
async def test_a_reading_dropped_while_it_waits_closes_the_connection():
    script = holding(UNFINISHED)
    async with Server(script) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        assert await anext(body) == b'ok'
        reading = body.__anext__()
        reading.send(None)
        reading.close()
        await until(lambda: script.closed)


@pytest.mark.parametrize('with_pool', [False])
@pytest.mark.usefixtures('only_full_collections')
@on_loops
async def test_a_body_dropped_in_a_cycle_after_a_pause_closes_its_connection(with_pool):
    script = holding(UNFINISHED, b'more')
    request, close = Pool(socket_timeout=0.02)
    async with Server(script) as server:
        box = [(await request(b'GET', server.url))[2]]
        # Until the loop has nothing to do with it: bytes have come, no time is running.
        await asyncio.sleep(0.1)
        if with_pool:
            del request, close
        drop_in_a_cycle(box)
        await until(lambda: script.closed)


@on_loops
async def test_a_body_left_in_the_middle_closes_its_connection():
    script = holding(UNFINISHED)
    async with Server(script) as server, pool() as request:
        async for _ in (await request(b'GET', server.url))[2]:
            break
        await until(lambda: script.closed)


def in_this_thread(function, *args):
    function(*args)


def in_another_thread(function, *args):
    thread = threading.Thread(target=function, args=args)
    thread.start()
    thread.join()


@pytest.mark.parametrize('loop_is_closed, how', [
    (False, drop), (False, drop_in_a_cycle), (True, drop),
    ])
@pytest.mark.parametrize('loop_name', LOOPS)
@pytest.mark.usefixtures('only_full_collections')
def test_a_body_dropped_after_its_loop_stopped_closes_its_connection(
        loop_name, loop_is_closed, how):
    before = open_descriptors()

    async def begin(listener):
        request, _ = Pool()
        url = f'http://127.0.0.1:{listener.getsockname()[1]}/'
        task = asyncio.create_task(request(b'GET', url))
        peer, _ = await asyncio.get_running_loop().sock_accept(listener)
        peer.sendall(UNFINISHED)
        return peer, [(await task)[2]]

    for run in in_this_thread, in_another_thread:
        with (socket.create_server(('127.0.0.1', 0)) as listener,
              asyncio.Runner(loop_factory=LOOPS[loop_name]) as runner):
            listener.setblocking(False)
            peer, box = runner.run(begin(listener))
            with peer:
                if loop_is_closed:
                    runner.close()
                run(how, box)
                # The end comes at once, with nothing that runs the loop.
                peer.settimeout(PATIENCE)
                while peer.recv(1000):
                    pass
    assert open_descriptors() == before


@on_loops
async def test_a_pool_closed_while_a_body_is_read_lets_it_end():
    script = holding(OK[:-1], OK[-1:])
    request, close = Pool()
    async with Server(script) as server:
        _, _, body = await request(b'GET', server.url)
        await close()
        assert await buffered(body) == b'ok'
        await until(lambda: script.closed)


# --------------------------------------------------------------- the pace of a consumer


@on_loops
async def test_nothing_is_read_ahead_of_the_consumer():
    loop = asyncio.get_running_loop()
    sockets = Sockets(bufsize=65536)

    async def fill(sock):
        """Send until the client has not read anything for a hundred turns of its loop."""
        sent = full = 0
        while full < 100 and sent < 64 * 1024 * 1024:
            try:
                sent += sock.send(b'x' * 65536)
                full = 0
            except BlockingIOError:
                full += 1
                await turns(1)
        return sent

    with socket.create_server(('127.0.0.1', 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        listener.setblocking(False)
        async with pool(get_sock=sockets) as request:
            url = f'http://127.0.0.1:{listener.getsockname()[1]}/'
            task = asyncio.create_task(request(b'GET', url))
            sock, _ = await loop.sock_accept(listener)
            with sock:
                sock.setblocking(False)
                await loop.sock_recv(sock, 1000)
                sock.send(head())
                _, _, body = await task
                sent = await fill(sock)
                assert sent < 8 * 1024 * 1024
                # Nor does the loop look at what is there again and again.
                busy = time.thread_time()
                await asyncio.sleep(0.1)
                assert time.thread_time() - busy < 0.05
                read = len(await anext(body))
                while read < sent // 2:
                    read += len(await anext(body))
                more = await fill(sock)
                assert 0 < more < 8 * 1024 * 1024
            assert read + len(await buffered(body)) == sent + more


@on_loops
async def test_a_body_that_is_always_readable_lets_other_tasks_have_their_turns():
    length = 16 * 1024 * 1024

    def serve(listener):
        peer, _ = listener.accept()
        with peer:
            peer.recv(1000)
            peer.sendall(head(b'content-length: %d' % length) + b'x' * length)

    moved = most = total = 0

    async def other():
        nonlocal moved
        while True:
            moved = 0
            await asyncio.sleep(0)

    with socket.create_server(('127.0.0.1', 0)) as listener:
        async with pool() as request:
            serving = asyncio.create_task(asyncio.to_thread(serve, listener))
            _, _, body = await request(
                b'GET', f'http://127.0.0.1:{listener.getsockname()[1]}/')
            other_task = asyncio.create_task(other())
            async for chunk in body:
                total += len(chunk)
                moved += len(chunk)
                most = max(most, moved)
                # As work on a chunk does: by then there is always more to read.
                time.sleep(0.0005)
            other_task.cancel()
            await serving
    assert total == length
    assert most <= 1.25 * 1024 * 1024


# ----------------------------------------------------------------- the time of a response


@on_loops
async def test_a_response_that_stops_coming_fails_in_time():
    async def fail(sent, phase):
        script = holding(sent)
        async with Server(script) as server, pool(socket_timeout=0.05) as request:
            error = await failure(get(request, server.url))
            assert (type(error), type(error.__cause__)) == (HttpDataError, TimeoutError)
            assert str(error) == (f'{where(server)}reading the response {phase}: TimeoutError: '
                                  'socket_timeout, 0.05 seconds, passed')
            assert (error.reused, error.response_started) == (False, bool(sent))
            assert asyncio.current_task().cancelling() == 0
            await until(lambda: script.closed)

    await asyncio.gather(*[fail(sent, phase) for sent, phase in (
        (b'', 'head'), (b'HTTP/1.1 200', 'head'), (CONTINUE, 'head'), (UNFINISHED, 'body'),
        (chunked(b'2\r\n'), 'body'), (chunked(b'0\r\n'), 'body'), (head(), 'body'))])


@pytest.mark.parametrize('before', [b'', CONTINUE], ids=['first', 'after an interim one'])
@on_loops_at_once
async def test_a_head_in_trickles_fails_in_time(before):
    async def script(peer):
        await peer.read_head()
        await peer.send(before + b'HTTP/1.1 200 ')
        while not peer.reader.at_eof():
            await peer.send(b'x')
            await asyncio.sleep(0.005)

    async with Server(script) as server, pool(
            socket_timeout=0.1, max_header_length=2 ** 20) as request:
        error = await failure(request(b'GET', server.url))
        assert (type(error), type(error.__cause__)) == (HttpDataError, TimeoutError)
        assert error.response_started


@on_loops_at_once
async def test_the_time_of_a_head_does_not_begin_with_its_first_byte():
    async def script(peer):
        await peer.read_head()
        begun[peer.index].set()
        if peer.index == 0:
            await begun[1].wait()
            await peer.send(b'H')
        await peer.closed()

    async def fail(number):
        error = await failure(request(b'GET', server.url))
        assert (type(error), type(error.__cause__)) == (HttpDataError, TimeoutError)
        late.append(number)

    begun, late = [asyncio.Event(), asyncio.Event()], []
    async with Server(script) as server, pool(socket_timeout=0.3) as request:
        async with asyncio.TaskGroup() as group:
            for number in 0, 1:
                group.create_task(fail(number))
                await begun[number].wait()
    # The second was sent before the first byte of the first one's response.
    assert late == [0, 1]


@on_loops_at_once
async def test_interim_responses_and_reads_of_a_body_have_a_time_each():
    slow = [[CONTINUE] * 5 + [OK], [head(b'content-length: 5'), *[b'x'] * 5]]
    whole = [b'ok', b'xxxxx']

    async def script(peer):
        await peer.read_head()
        for piece in slow[peer.index]:
            await asyncio.sleep(0.07)
            await peer.send(piece)

    async with Server(script) as server, pool(socket_timeout=0.3) as request:
        responses = await asyncio.gather(*[get(request, server.url) for _ in slow])
    assert sorted(body for _, _, body in responses) == whole


@on_loops_at_once
async def test_the_time_of_the_consumer_is_not_counted():
    async with Server(holding(OK[:-1], OK[-1:])) as server, pool(socket_timeout=0.05) as request:
        _, _, body = await request(b'GET', server.url)
        await asyncio.sleep(0.15)
        assert await buffered(body) == b'ok'


@pytest.mark.parametrize('keep_alive_timeout', [0.02, 0])
@on_loops
async def test_keep_alive_never_raises_the_time_that_a_connection_idles(keep_alive_timeout):
    sockets = Sockets()
    raw = with_length(b'connection: keep-alive', b'keep-alive: timeout=1000')
    async with Server(Answering(raw)) as server, pool(
            keep_alive_timeout=keep_alive_timeout, get_sock=sockets) as request:
        await get(request, server.url)
        if keep_alive_timeout:
            await until(lambda: sockets.socks[0].fileno() == -1)
        assert sockets.socks[0].fileno() == -1


@on_loops_at_once
async def test_keep_alive_lowers_the_time_that_a_connection_idles_to_a_second_less():
    fields = ((b'keep-alive: timeout=2',), (b'Keep-Alive: max=9, Timeout=2',),
              (b'connection: keep-alive', b'keep-alive: max=9', b'keep-alive: timeout=2'))
    loop = asyncio.get_running_loop()
    idled = []

    async def script(peer):
        await peer.read_head()
        await peer.send(with_length(*fields[peer.index]))
        started = loop.time()
        await peer.closed()
        idled.append(loop.time() - started)

    async with Server(script) as server, pool() as request:
        await asyncio.gather(*[get(request, server.url) for _ in fields])
        await until(lambda: len(idled) == len(fields))
    # Without the field it would be 15 seconds.
    assert all(0.9 < seconds < 10 for seconds in idled)


# ---------------------------------------------------------------- names, connecting, pooling
#
# Helpers first: a nameserver, certificates, and a server in threads, for what must happen while
# the client's loop is blocked or must not run on it.

FORGED = b'HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged'


@contextlib.contextmanager
def row(name):
    """Of a table whose rows one test runs one after the other: told when one of them fails."""
    try:
        yield
    except BaseException as error:
        error.add_note(f'in the row: {name}')
        raise


async def failed(awaitable, kind, cause, message=None):
    """The error that the awaitable ends with, which leaves the task as it was."""
    before = asyncio.current_task().cancelling()
    with pytest.raises(lowhaio.HttpError) as caught:
        await awaitable
    error = caught.value
    assert asyncio.current_task().cancelling() == before
    assert type(error) is kind
    assert cause is None or type(error.__cause__) is cause
    assert message is None or str(error) == message
    return error


def peer_prefix(server, method='GET'):
    """How the message of an error begins that came with or after the connection."""
    return f'{method} {server.origin} (peer 127.0.0.1:{server.port})'


def system_error(kind, number):
    return f'{kind.__name__}: [Errno {number}] {os.strerror(number)}'


REFUSED = system_error(ConnectionRefusedError, errno.ECONNREFUSED)


class Nameserver:
    """A nameserver on UDP. It answers each name with a list of addresses, the name of an error,
    or None: not at all. It may wait for a gate first. AAAA records have answers of their own; a
    name that is not there has no address then, or the same error."""

    def __init__(self):
        self.answers = {}
        self.ipv6_answers = {}
        self.ttl = 300
        self.gates = {}
        self.queries = collections.Counter()
        self.ipv6_queries = collections.Counter()
        logger = dnslib.server.DNSLogger(log='-request,-reply,-truncated,-error')
        self.server = dnslib.server.DNSServer(self, '127.0.0.1', 0, logger=logger)
        self.address = self.server.server.socket.getsockname()
        self.server.start_thread()

    def resolve(self, request, handler):
        name = str(request.q.qname).rstrip('.').lower()
        kind = dnslib.QTYPE[request.q.qtype]
        if kind == 'A':
            self.queries[name] += 1
            answer = self.answers.get(name, [])
        else:
            self.ipv6_queries[name] += 1
            default = self.answers.get(name)
            answer = self.ipv6_answers.get(name, default if isinstance(default, str) else [])
        if name in self.gates:
            self.gates[name].wait(PATIENCE)
        if answer is None:
            raise dnslib.DNSError('dnslib answers nothing then')
        reply = request.reply()
        if isinstance(answer, str):
            reply.header.rcode = dnslib.RCODE.reverse[answer]
        else:
            for address in answer:
                reply.add_answer(*dnslib.RR.fromZone(f'{name}. {self.ttl} {kind} {address}'))
        return reply

    def stop(self):
        self.server.stop()
        self.server.thread.join()
        self.server.server.server_close()


@pytest.fixture(scope='module')
def running_nameserver():
    server = Nameserver()
    yield server
    server.stop()


@pytest.fixture
def nameserver(running_nameserver):
    running_nameserver.answers = {'name.test': ['127.0.0.1']}
    running_nameserver.ipv6_answers = {}
    running_nameserver.ipv6_queries.clear()
    running_nameserver.ttl = 300
    running_nameserver.gates = {}
    running_nameserver.queries.clear()
    return running_nameserver


@pytest.fixture
def silent_address():
    """Of a nameserver that never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(('127.0.0.1', 0))
        yield sock.getsockname()


def asking(*nameservers):
    """A `get_dns_resolver` that asks nameservers, each given as (seconds, address)."""
    async def get_nameservers(_, fqdn):
        for nameserver in nameservers:
            yield nameserver

    async def get_host(hosts, fqdn, qtype):
        return None

    return lambda **kwargs: aiodnsresolver.Resolver(
        **kwargs, get_nameservers=get_nameservers, get_host=get_host)


async def no_address(host):
    raise aiodnsresolver.DnsRecordDoesNotExist()


def resolving(resolve, resolve_ipv6=no_address):
    """A `get_dns_resolver` of the caller's own, from async functions of the host name, of which
    the second is for AAAA records."""
    async def resolve_with_type(host, qtype, get_logger_adapter):
        if qtype == aiodnsresolver.TYPES.A:
            return await resolve(host)
        assert qtype == aiodnsresolver.TYPES.AAAA
        return await resolve_ipv6(host)

    async def clear_cache(get_logger_adapter):
        pass

    return lambda get_logger_adapter: (resolve_with_type, clear_cache)


def always(*addresses):
    """A `get_dns_resolver` with one answer for all names."""
    async def resolve(host):
        return [ipaddress.ip_address(address) for address in addresses]

    return resolving(resolve)



class ServerAt(Server):
    """A server at the address of a socket that is bound already."""

    def __init__(self, sock, script, context=None):
        super().__init__(script, context)
        self.sock = sock

    async def __aenter__(self):
        self.address, self.port = self.sock.getsockname()[:2]
        self.server = await asyncio.start_server(
            self.serve, sock=self.sock, ssl=self.context, limit=2 ** 20)
        return self


def bound_to(*addresses):
    """A socket for each address, all with one port. Not listening, they refuse connections."""
    while True:
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(socket.socket()) for _ in addresses]
            port = 0
            try:
                for sock, address in zip(socks, addresses, strict=True):
                    sock.bind((address, port))
                    port = sock.getsockname()[1]
            except OSError:
                continue  # somebody has that port at another of the addresses
            stack.pop_all()
            return socks


def receive_head(sock):
    """As `Peer.read_head`, of a blocking socket."""
    data = b''
    while not data.endswith(b'\r\n\r\n'):
        more = sock.recv(65536)
        if not more:
            raise EOFError
        data += more
    return data


def receive_end(sock):
    """Wait until the client has closed, and return what it sent before."""
    return b''.join(iter(lambda: sock.recv(65536), b''))


class ThreadServer:
    """Runs the script, a function of a blocking socket, in a thread for each connection."""

    def __init__(self, script, context=None, listener=None):
        self.script = script
        self.context = context
        self.listener = listener
        self.threads = []
        self.socks = []
        self.failures = []
        self.is_over = False

    def __enter__(self):
        if self.listener is None:
            [self.listener] = bound_to('127.0.0.1')
        self.listener.listen()
        address, self.port = self.listener.getsockname()
        scheme = 'http' if self.context is None else 'https'
        self.origin = f'{scheme}://{address}:{self.port}'
        self.url = self.origin + '/'
        self.start(self.accept)
        return self

    def __exit__(self, kind, error, traceback):
        self.is_over = True
        socket.create_connection(self.listener.getsockname()).close()
        self.threads[0].join()
        for sock in self.socks:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join()
        self.listener.close()
        if error is None and self.failures:
            raise self.failures[0]

    def start(self, function, *args):
        thread = threading.Thread(target=function, args=args)
        self.threads.append(thread)
        thread.start()

    def accept(self):
        while True:
            sock, _ = self.listener.accept()
            if self.is_over:
                sock.close()
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(PATIENCE)
            if self.context is not None:
                sock = self.context.wrap_socket(
                    sock, server_side=True, do_handshake_on_connect=False,
                    suppress_ragged_eofs=False)
            self.socks.append(sock)
            self.start(self.serve, sock)

    def serve(self, sock):
        with sock:
            try:
                if self.context is not None:
                    sock.do_handshake()
                self.script(sock)
            except (OSError, EOFError):
                pass  # the client hung up, or the test is over
            except BaseException as error:
                self.failures.append(error)


class AnsweringInThreads:
    """A script that answers all requests. It keeps the sockets that they came over."""

    def __init__(self, response=OK):
        self.response = response
        self.socks = []

    def __call__(self, sock):
        while True:
            receive_head(sock)
            self.socks.append(sock)
            sock.sendall(self.response)


@functools.cache
def authority():
    return trustme.CA()


def certified(*names, version=None, **options):
    """A server's context with a certificate for the names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(*names, **options).configure_cert(context)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


@functools.cache
def trusting(*protocols):
    """A client's context that trusts the authority of the tests."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(protocols or ['http/1.1'])
    authority().configure_trust(context)
    return context


TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
TLS_VERSIONS = pytest.mark.parametrize('version', [TLS_1_2, TLS_1_3], ids=['1.2', '1.3'])


@functools.cache
def server_context():
    return certified('127.0.0.1', 'name.test')



def context_of(scheme):
    return server_context() if scheme == 'https' else None


# ---------------------------------------------------------------------------------- names

def local_address(peer):
    return peer.sock.getsockname()[0]


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
async def test_records_that_live_for_no_time_are_asked_for_each_time(nameserver):
    nameserver.ttl = 0
    options = {'get_dns_resolver': asking((5, nameserver.address))}
    async with Server(Answering(OK)) as server, pool(**options) as request:
        for _ in range(3):
            await get(request, f'http://name.test:{server.port}/')
    assert nameserver.queries == {'name.test': 3}


def expiring(asked, *seconds):
    """A resolver of 127.0.0.1 and so on, each fresh for some of the seconds."""
    async def resolve(host):
        asked.append(host)
        now = asyncio.get_running_loop().time()
        return [aiodnsresolver.IPv4AddressExpiresAt(f'127.0.0.{number}', expires_at=now + after)
                for number, after in enumerate(seconds, 1)]

    return resolving(resolve)


@on_loops
async def test_the_addresses_of_a_custom_resolver_are_kept_while_they_are_fresh():
    asked = []
    options = {'get_dns_resolver': expiring(asked, 3600)}
    async with Server(Answering(OK)) as server, pool(**options) as request:
        for name in ('a.test', 'b.test', 'A.test', 'a.test.'):
            await get(request, f'http://{name}:{server.port}/')
    assert asked == ['a.test', 'b.test']


@on_loops
async def test_the_addresses_of_a_custom_resolver_are_asked_for_again_when_they_are_stale():
    asked = []
    options = {'get_dns_resolver': expiring(asked, 0.02)}
    async with Server(Answering(OK)) as server, pool(**options) as request:
        while len(asked) < 3:
            await get(request, f'http://a.test:{server.port}/')
            await asyncio.sleep(0.005)


@on_loops
async def test_addresses_are_as_fresh_as_the_stalest_of_them():
    asked = []
    options = {'get_dns_resolver': expiring(asked, 3600, 0)}
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
        'NXDOMAIN', aiodnsresolver.DnsRecordDoesNotExist, 'DnsRecordDoesNotExist', 1),
    'no answer in the response': (
        [], aiodnsresolver.DnsNoMatchingAnswers, 'DnsNoMatchingAnswers', 1),
    'the nameserver fails': (
        'SERVFAIL', aiodnsresolver.DnsResponseCode, 'DnsResponseCode: 2', 2),
    'the nameserver refuses': (
        'REFUSED', aiodnsresolver.DnsResponseCode, 'DnsResponseCode: 5', 2),
}


@on_loops
async def test_a_name_that_has_no_address_is_an_error(nameserver):
    options = {'get_dns_resolver': asking((5, nameserver.address), (5, nameserver.address))}
    for case, (answer, cause, text, queries) in NO_ADDRESS.items():
        with row(case):
            nameserver.answers['missing.test'] = answer
            nameserver.queries.clear()
            async with Server(Answering(OK)) as server, pool(**options) as request:
                for number in (1, 2):  # an error is not remembered
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


@on_loops
async def test_socket_timeout_bounds_all_of_a_lookup_with_many_timeouts_in_it(silent_address):
    started = time.monotonic()
    nameservers = [(0.03, silent_address)] * 100
    options = {'get_dns_resolver': asking(*nameservers), 'socket_timeout': 0.1}
    async with pool(**options) as request:
        error = await failed(request(b'GET', 'http://name.test/'), HttpDnsError, TimeoutError)
    assert 'socket_timeout, 0.1 seconds, passed' in str(error)
    assert time.monotonic() - started < 2


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


# A timer of a lookup is at 0.005 seconds. The loop, blocked for 0.015, finds both timers due.
SAME_TICK = {'cancelled before': 0.001, 'cancelled after': 0.01}
TIMERS = {
    'of the only nameserver': ([0.005], 10),
    'of the first nameserver': ([0.005, 0.005], 10),
    'of socket_timeout': ([60], 0.005),
    'of both': ([0.005, 60], 0.005),
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
        time.sleep(0.015)

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
                        loop.call_soon(time.sleep, 0.015)
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


def resolve_at_once(host):
    return (ipaddress.IPv4Address('127.0.0.1'),)


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


# -------------------------------------------------------------------------- cancellation
#
# What arrives at the caller, and at what the caller gave, is what the task was cancelled with:
# so libraries with scopes of their own, as anyio, know their cancellations.


@contextlib.asynccontextmanager
async def looking_up():
    waits = asyncio.Event()

    async def resolve(host):
        waits.set()
        try:
            await forever()
        finally:
            await asyncio.sleep(0)

    async with pool(get_dns_resolver=resolving(resolve)) as request:
        yield lambda: request(b'GET', 'http://name.test/'), waits.is_set


@contextlib.asynccontextmanager
async def looking_up_by_the_default():
    """After a time-out of the resolver, which cancels the task for it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as first, \
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as second:
        for sock in first, second:
            sock.bind(('127.0.0.1', 0))
        options = {'get_dns_resolver': asking(
            (0.001, first.getsockname()), (60, second.getsockname()))}
        async with pool(**options) as request:
            yield (lambda: request(b'GET', 'http://name.test/'),
                   lambda: select.select([second], [], [], 0)[0])


@contextlib.asynccontextmanager
async def looking_up_ipv6():
    """After the address of the A record has refused."""
    waits = asyncio.Event()

    async def resolve(host):
        return [IPv4Address('127.0.0.1')]

    async def resolve_ipv6(host):
        waits.set()
        await forever()

    [refusing] = bound_to('127.0.0.1')
    with refusing:
        async with pool(get_dns_resolver=resolving(resolve, resolve_ipv6)) as request:
            url = f'http://name.test:{refusing.getsockname()[1]}/'
            yield lambda: request(b'GET', url), waits.is_set


@contextlib.asynccontextmanager
async def in_get_connection():
    waits = asyncio.Event()

    async def get_connection(*args):
        waits.set()
        await forever()

    async with pool(get_connection=get_connection) as request:
        yield lambda: request(b'GET', 'http://127.0.0.1/'), waits.is_set


@contextlib.asynccontextmanager
async def waiting_for_a_place():
    async with Server(holding(UNFINISHED)) as server, pool(
            max_connections=1) as request:
        _, _, body = await request(b'GET', server.url)
        started = asyncio.Event()

        async def waiting():
            started.set()
            return await request(b'GET', server.url)

        yield waiting, started.is_set
        await body.aclose()


@contextlib.asynccontextmanager
async def connecting():
    sockets = Sockets()
    [silent] = bound_to('127.0.0.1')
    with silent, full_backlog(silent) as port:
        async with pool(get_sock=sockets) as request:
            yield (lambda: request(b'GET', f'http://127.0.0.1:{port}/'),
                   lambda: sockets.socks)


@contextlib.asynccontextmanager
async def shaking_hands():
    hello = asyncio.Event()

    async def script(peer):
        await peer.read(1)
        hello.set()
        await peer.closed()

    async with Server(script) as server, pool(get_ssl_context=trusting) as request:
        yield lambda: request(b'GET', f'https://127.0.0.1:{server.port}/'), hello.is_set


def sending(chunks, is_head_blocked=False, scheme='http'):
    """A request body, to a server that reads nothing beyond a first part."""
    @contextlib.asynccontextmanager
    async def phase():
        async def script(peer):
            peer.writer.transport.pause_reading()
            await forever()

        length = sum(len(chunk) for chunk in chunks if isinstance(chunk, bytes))
        headers = of_length(length + 1)
        if is_head_blocked:
            headers = ((b'a', LARGE * 4), *headers)
        body = Body(*chunks)
        looks = []

        def is_reached():
            # Nothing tells when the kernel has no more room: some turns after it was asked.
            looks.append(len(server.peers) == starts[0])
            return sum(looks) > 10 and (forever not in chunks or body.waits.is_set())

        starts = [0]

        def start():
            starts[0] += 1
            looks.clear()
            body.waits.clear()
            return request(b'PUT', server.url, headers=headers, body=body)

        async with Server(script, context_of(scheme)) as server, pool(
                get_ssl_context=trusting, get_sock=small_sock) as request:
            yield start, is_reached

    return phase


@contextlib.asynccontextmanager
async def reading_the_head(scheme='http'):
    asked = asyncio.Event()

    async def script(peer):
        await peer.read_head()
        asked.set()
        await peer.closed()

    async with Server(script, context_of(scheme)) as server, pool(
            get_ssl_context=trusting) as request:
        yield lambda: request(b'GET', server.url), asked.is_set


@contextlib.asynccontextmanager
async def reading_the_body(scheme='http'):
    async with Server(holding(UNFINISHED), context_of(scheme)) as server, pool(
            get_ssl_context=trusting) as request:
        reads = []

        async def reading():
            _, _, body = await request(b'GET', server.url)
            reads.clear()
            async for chunk in body:
                reads.append(chunk)

        yield reading, lambda: reads


# In each of them, the request waits for ever.
PHASES = {
    'lookup': looking_up,
    'default-lookup': looking_up_by_the_default,
    'ipv6-lookup': looking_up_ipv6,
    'get-connection': in_get_connection,
    'place': waiting_for_a_place,
    'connecting': connecting,
    'tls': shaking_hands,
    'request-body': sending((forever,)),
    'request-body-later': sending((b'ab', None, forever)),
    'sending': sending((LARGE * 20,)),
    'sending-the-head': sending((forever,), is_head_blocked=True),
    'head': reading_the_head,
    'body': reading_the_body,
    'request-body-in-tls': sending((b'ab', None, forever), scheme='https'),
    'sending-in-tls': sending((LARGE * 20,), scheme='https'),
    'sending-the-head-in-tls': sending((forever,), is_head_blocked=True, scheme='https'),
    'head-in-tls': functools.partial(reading_the_head, 'https'),
    'body-in-tls': functools.partial(reading_the_body, 'https'),
}


class Around:
    """A scope around a request, which is cancelled once the request has come far enough."""

    def __init__(self, start, is_reached):
        self.start = start
        self.is_reached = is_reached
        self.outcome = None

    async def act_on(self, act):
        await until(self.is_reached)
        act()

    def cancel_later(self, act):
        return asyncio.create_task(self.act_on(act))

    async def move_on_after(self):
        with anyio.move_on_after(math.inf) as scope:
            acting = self.cancel_later(
                lambda: setattr(scope, 'deadline', anyio.current_time()))
            await self.start()
        await acting
        assert scope.cancelled_caught

    async def fail_after(self):
        with pytest.raises(TimeoutError) as caught:
            with anyio.fail_after(math.inf) as scope:
                acting = self.cancel_later(
                    lambda: setattr(scope, 'deadline', anyio.current_time()))
                await self.start()
        await acting
        assert type(caught.value) is TimeoutError

    async def cancel(self):
        with anyio.CancelScope() as scope:
            acting = self.cancel_later(scope.cancel)
            await self.start()
        await acting
        assert scope.cancelled_caught

    async def cancel_the_outer(self):
        with anyio.CancelScope() as outer:
            acting = self.cancel_later(outer.cancel)
            with anyio.CancelScope() as inner:
                await self.start()
        await acting
        assert (outer.cancelled_caught, inner.cancelled_caught) == (True, False)

    async def cancel_the_inner(self):
        with anyio.CancelScope() as outer:
            with anyio.CancelScope() as inner:
                acting = self.cancel_later(inner.cancel)
                await self.start()
            await acting
        assert (outer.cancelled_caught, inner.cancelled_caught) == (False, True)

    async def fail_beside(self):
        """In a task group, whose tasks end with the first that fails."""
        async def fail():
            await until(self.is_reached)
            raise LookupError('beside')

        with pytest.raises(ExceptionGroup) as caught:
            async with anyio.create_task_group() as group:
                group.start_soon(fail)
                await self.start()
        assert [type(error) for error in caught.value.exceptions] == [LookupError]

    async def asyncio_timeout(self):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as scope:
                acting = self.cancel_later(
                    lambda: scope.reschedule(asyncio.get_running_loop().time()))
                await self.start()
        await acting

    async def asyncio_group(self):
        async def fail():
            await until(self.is_reached)
            raise LookupError('beside')

        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
                await self.start()
        assert [type(error) for error in caught.value.exceptions] == [LookupError]

    async def with_a_message(self):
        task = asyncio.create_task(self.start())
        await until(self.is_reached)
        task.cancel('why')
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert caught.value.args == ('why',)
        assert task.cancelling() == 1

    async def without_a_message(self):
        task = asyncio.create_task(self.start())
        await until(self.is_reached)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert caught.value.args == ()
        assert task.cancelling() == 1


WAYS_TO_CANCEL = [way for name, way in vars(Around).items()
                  if inspect.iscoroutinefunction(way) and name != 'act_on']
FACTORIES = pytest.mark.parametrize('is_eager', [
    pytest.param(False, id='tasks'),
    pytest.param(True, id='eager-tasks', marks=pytest.mark.skipif(
        sys.version_info < (3, 12), reason='new in 3.12'))])


def make_tasks(is_eager):
    """From now on."""
    if is_eager:
        loop = asyncio.get_running_loop()
        # anyio looks if it is this one.
        loop.set_task_factory(asyncio.eager_task_factory)
        ended = asyncio.sleep(0)
        try:
            loop.create_task(ended)
        except TypeError as error:
            # A uvloop that gives the factory an argument that only later ones take.
            ended.close()
            loop.set_task_factory(None)
            pytest.skip(f'the loop does not make eager tasks: {error}')


@FACTORIES
@pytest.mark.parametrize('phase', PHASES)
@on_loops
async def test_a_cancellation_is_that_of_who_has_cancelled(phase, is_eager):
    make_tasks(is_eager)
    for way in WAYS_TO_CANCEL:
        with row(way.__name__):
            async with PHASES[phase]() as (start, is_reached):
                await asyncio.create_task(way(Around(start, is_reached)))
                # Of this task, too, nothing is left to be cancelled.
                await way(Around(start, is_reached))
                await asyncio.sleep(0)
                assert cancelling() == 0


async def move_on():
    with anyio.move_on_after(0.001) as scope:
        await forever()
    assert scope.cancelled_caught


async def move_on_when_cleaned_up():
    """It is cancelled again in each turn, as long as it has not ended."""
    with anyio.move_on_after(0.001) as scope:
        try:
            await forever()
        finally:
            for _ in range(3):
                with contextlib.suppress(asyncio.CancelledError):
                    await forever()
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.001)
    assert scope.cancelled_caught


async def move_on_in_a_scope():
    with anyio.CancelScope() as outer:
        with anyio.CancelScope() as inner:
            asyncio.get_running_loop().call_soon(inner.cancel)
            await forever()
    assert (outer.cancelled_caught, inner.cancelled_caught) == (False, True)


async def move_on_from_within():
    with anyio.CancelScope() as scope:
        scope.cancel()
        await asyncio.sleep(0)
        await forever()
    assert scope.cancelled_caught


async def fail_and_go_on():
    with pytest.raises(TimeoutError):
        with anyio.fail_after(0.001):
            await forever()


async def leave_a_task_group():
    async with anyio.create_task_group() as group:
        group.start_soon(forever)
        await anyio.sleep(0)
        group.cancel_scope.cancel()


async def wait_in_a_task():
    """For a task that ends later than it is cancelled."""
    async def linger():
        try:
            await forever()
        finally:
            await turns(3)

    with anyio.move_on_after(0.001) as scope:
        await asyncio.create_task(linger())
    assert scope.cancelled_caught


async def shielded_from_a_message():
    task = asyncio.current_task()
    asyncio.get_running_loop().call_soon(task.cancel, 'why')
    try:
        await forever()
    except asyncio.CancelledError as error:
        assert error.args == ('why',)
        task.uncancel()


WAYS_TO_GO_ON = [
    move_on, move_on_when_cleaned_up, move_on_in_a_scope, move_on_from_within, fail_and_go_on,
    leave_a_task_group, wait_in_a_task, shielded_from_a_message]


async def in_resolver(server, way):
    async def resolve(host):
        await way()
        return [IPv4Address('127.0.0.1')]

    async with pool(get_dns_resolver=resolving(resolve)) as request:
        return await get(request, f'http://name.test:{server.port}/')


async def in_connection(server, way):
    async def get_connection(scheme, host, port):
        await way()
        return connected_to(port)

    async with pool(get_connection=get_connection) as request:
        return await get(request, server.url)


def connected_to(port):
    sock = socket.create_connection(('127.0.0.1', port))
    sock.setblocking(False)
    return sock


async def in_body_before_a_chunk(server, way):
    async def body():
        await way()
        yield b'ab'

    async with pool() as request:
        return await get(request, server.url, headers=of_length(2), body=body)


async def in_body_after_a_chunk(server, way):
    async def body():
        yield b'a'
        await way()
        yield b'b'

    async with pool() as request:
        return await get(request, server.url, headers=of_length(2), body=body)


@FACTORIES
@pytest.mark.parametrize('callee', [
    in_resolver, in_connection, in_body_before_a_chunk, in_body_after_a_chunk])
@on_loops
async def test_a_scope_in_what_the_caller_gave_is_left_and_the_request_goes_on(callee, is_eager):
    make_tasks(is_eager)
    async with Server(Answering(OK)) as server:
        for way in WAYS_TO_GO_ON:
            with row(way.__name__):
                code, _, body = await asyncio.create_task(callee(server, way))
                assert (code, body) == (b'200', b'ok')
                code, _, body = await callee(server, way)
                assert (code, body) == (b'200', b'ok')
                await asyncio.sleep(0)
                assert cancelling() == 0


@pytest.mark.parametrize('callee', [
    in_resolver, in_connection, in_body_before_a_chunk, in_body_after_a_chunk])
@on_loops
async def test_a_scope_that_fails_in_what_the_caller_gave_is_the_cause(callee):
    async def fail():
        with anyio.fail_after(0.001):
            await forever()

    async with Server(Answering(OK)) as server:
        error = await failure(callee(server, fail))
        assert type(error.__cause__) is TimeoutError
        assert str(error).endswith('TimeoutError')
        assert cancelling() == 0


@SCHEMES
@on_loops
async def test_a_scope_around_a_chunk_that_is_blocked_is_the_cause(scheme):
    """The scope is left, with the generator: what it would have gone on with is not sent."""
    async def body():
        with anyio.move_on_after(0.01):
            yield LARGE * 20

    async def script(peer):
        peer.writer.transport.pause_reading()
        await forever()

    async with Server(script, context_of(scheme)) as server, pool(
            get_ssl_context=trusting, get_sock=small_sock) as request:
        with pytest.raises(HttpDataError):
            async with asyncio.timeout(PATIENCE / 2):
                await request(b'PUT', server.url, headers=of_length(len(LARGE) * 20), body=body)
        assert cancelling() == 0


@FACTORIES
@on_loops
async def test_get_connection_may_be_that_of_anyio(is_eager):
    """Its attempts are tasks of a group, which is cancelled when the first has succeeded."""
    make_tasks(is_eager)

    async def get_connection(scheme, host, port):
        async with await anyio.connect_tcp('localhost', port) as stream:
            # That one is anyio's, and is closed, which ends sending over this one, too.
            assert stream.extra(anyio.abc.SocketAttribute.remote_port) == port
        return connected_to(port)

    async with Server(Answering(OK)) as server, pool(get_connection=get_connection) as request:
        code, _, body = await get(request, server.url)
        assert (code, body) == (b'200', b'ok')
        with anyio.fail_after(PATIENCE):
            assert (await get(request, server.url))[0] == b'200'


@FACTORIES
@pytest.mark.parametrize('chunks_before', [0, 1])
@on_loops
async def test_a_body_may_make_a_request_with_httpx(chunks_before, is_eager):
    """Its waits are in scopes of anyio."""
    make_tasks(is_eager)

    async def body(url):
        for _ in range(chunks_before):
            yield b'ok'
        async with httpx.AsyncClient(trust_env=False) as client:
            async with client.stream('GET', url.replace('127.0.0.1', 'localhost')) as response:
                async for chunk in response.aiter_bytes():
                    yield chunk

    script = Answering(OK)
    async with Server(script) as server, Server(Answering(OK)) as other, pool() as request:
        await get(request, server.url, headers=of_length(2 + 2 * chunks_before), body=body,
                  body_args=(other.url,))
    assert script.bodies == [b'ok' * (chunks_before + 1)]


@pytest.mark.parametrize('loop_name', LOOPS)
@pytest.mark.parametrize('phase', PHASES)
def test_an_interrupt_from_the_keyboard_is_one_in_each_phase(phase, loop_name):
    """asyncio.Runner cancels its task for it, and looks afterwards if that was taken back."""
    async def main():
        async with PHASES[phase]() as (start, is_reached):
            acting = Around(start, is_reached).cancel_later(
                lambda: signal.raise_signal(signal.SIGINT))
            try:
                await start()
            finally:
                await acting

    # A process that a shell has started in the background begins with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), asyncio.Runner(
                loop_factory=LOOPS[loop_name]) as runner:
            runner.run(main())
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize('seconds', [(0.005, 0.006), (0.006, 0.005)],
                         ids=['resolver-first', 'scope-first'])
@on_loops
async def test_a_scope_ends_in_the_turn_of_a_time_out_of_the_resolver(silent_address, seconds):
    """The one that comes second is told of in the next turn."""
    timeout_of_resolver, timeout_of_scope = seconds
    options = {'get_dns_resolver': asking(
        (timeout_of_resolver, silent_address), (60, silent_address))}
    async with pool(**options) as request:
        asyncio.get_running_loop().call_soon(time.sleep, 0.02)
        with anyio.move_on_after(timeout_of_scope) as scope:
            await request(b'GET', 'http://name.test/')
        assert scope.cancelled_caught
        assert cancelling() == 0


@pytest.mark.parametrize('is_scope_first', [True, False])
@on_loops
async def test_a_scope_ends_in_the_turn_in_which_the_time_is_up(is_scope_first):
    """Also if what the caller gave cleans up, and goes on after the first cancellation."""
    async def clean_up(*args):
        try:
            await forever()
        finally:
            await forever()

    async def swallow(*args):
        try:
            await forever()
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                await forever()

    times = (0.006, 0.005) if is_scope_first else (0.005, 0.006)
    for options in ({'get_connection': clean_up}, {'get_connection': swallow},
                    {'get_dns_resolver': resolving(clean_up)}):
        async with pool(socket_timeout=times[0], **options) as request:
            asyncio.get_running_loop().call_soon(time.sleep, 0.02)
            with anyio.move_on_after(times[1]) as scope:
                await request(b'GET', 'http://name.test/')
            assert scope.cancelled_caught
            assert cancelling() == 0


@on_loops
async def test_a_lookup_where_a_cancellation_is_handled_takes_its_own_back(silent_address):
    """As in the cleaning up of a task that was cancelled."""
    async def clean_up_by_a_request():
        try:
            await forever()
        finally:
            before.append(cancelling())
            started.set()
            try:
                await request(b'GET', 'http://name.test/')
            finally:
                after.append(cancelling())

    before, after = [], []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as second:
        second.bind(('127.0.0.1', 0))
        options = {'get_dns_resolver': asking(
            (0.001, silent_address), (60, second.getsockname()))}
        async with pool(**options) as request:
            started = asyncio.Event()
            task = asyncio.create_task(clean_up_by_a_request())
            await turns(2)
            task.cancel()
            await until(lambda: select.select([second], [], [], 0)[0])
            task.cancel('why')
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
    assert caught.value.args == ('why',)
    assert (before, after) == ([1], [2])


# What can not be waited for: asyncio would wait for ever, and says so instead.

@types.coroutine
def bad_yield(value):
    yield value


async def await_another_loop(loop):
    await loop.create_future()


async def await_itself(loop):
    await asyncio.current_task()


async def await_no_future(loop):
    await bad_yield(b'SECRET')


async def await_a_plain_future(loop):
    await bad_yield(asyncio.get_running_loop().create_future())


BAD_WAITS = {
    await_another_loop: '^Task got (_?Future) attached to a different loop$',
    await_itself: '^Task cannot await on itself$',
    await_no_future: '^Task got bad yield: bytes$',
    await_a_plain_future: '^yield was used instead of yield from in task with (_?Future)$',
}


@pytest.mark.parametrize('callee', [
    in_resolver, in_connection, in_body_before_a_chunk, in_body_after_a_chunk])
@on_loops
async def test_what_can_not_be_waited_for_is_the_cause_at_once(callee):
    other = asyncio.new_event_loop()
    async with Server(Answering(OK)) as server:
        waited = []
        for wait, message in BAD_WAITS.items():
            waited.append(wait)
            with row(wait.__name__):
                error = await failure(callee(server, functools.partial(wait, other)))
                assert type(error.__cause__) is RuntimeError
                assert re.search(message, str(error.__cause__))
                assert str(error).endswith(f'RuntimeError: {error.__cause__}')
                assert cancelling() == 0
                if callee in (in_body_before_a_chunk, in_body_after_a_chunk):
                    await until(lambda: len(server.peers) == len(waited))  # noqa: B023
    other.close()


@pytest.mark.parametrize('callee', [
    in_resolver, in_connection, in_body_before_a_chunk, in_body_after_a_chunk])
@on_loops
async def test_what_goes_on_after_it_can_not_wait_goes_on(callee):
    other = asyncio.new_event_loop()

    async def go_on(wait):
        for _ in range(3):
            with contextlib.suppress(RuntimeError):
                await wait(other)

    async with Server(Answering(OK)) as server:
        for wait in BAD_WAITS:
            with row(wait.__name__):
                assert (await callee(server, functools.partial(go_on, wait)))[2] == b'ok'
    other.close()


@pytest.mark.parametrize('callee', [in_resolver, in_connection, in_body_after_a_chunk])
@on_loops
async def test_what_tries_again_and_again_to_wait_leaves_others_their_turns(callee):
    other = asyncio.new_event_loop()

    async def go_on():
        while True:
            with contextlib.suppress(RuntimeError):
                await await_another_loop(other)

    async with Server(Answering(OK)) as server:
        task = asyncio.create_task(callee(server, go_on))
        await until(lambda: server.peers or callee is not in_body_after_a_chunk)
        await turns(5)
        task.cancel('why')
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert caught.value.args == ('why',)
    other.close()


@on_loops
async def test_a_body_that_is_closed_can_not_wait_either():
    """As it cleans up, in a request that failed or whose coroutine was closed."""
    other = asyncio.new_event_loop()
    raised = []

    async def body(wait, is_waiting):
        try:
            yield b'a'
            if is_waiting:
                waits.append(True)
                await forever()
            yield b'bcd'
        finally:
            try:
                await wait(other)
            except BaseException as error:
                raised.append(type(error))
                raise

    for wait in BAD_WAITS:
        for is_waiting in True, False:
            with row(f'{wait.__name__} {is_waiting}'):
                waits = []
                async with Server(Uploads()) as server, pool() as request:
                    coroutine = request(b'PUT', server.url, headers=of_length(2), body=body,
                                        body_args=(wait, is_waiting))
                    if is_waiting:
                        await run_until(coroutine, lambda: waits)  # noqa: B023
                        coroutine.close()
                        assert raised.pop() in (asyncio.CancelledError, RuntimeError)
                    else:
                        error = await failure(coroutine)
                        assert type(error.__cause__) is ValueError
                        assert raised.pop() is RuntimeError
                    assert raised == []
    other.close()


# ----------------------------------------------------------------------------- connecting

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


@contextlib.contextmanager
def full_backlog(sock):
    """Make it listen, with more connections waiting to be accepted than it holds."""
    sock.listen(0)
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(sock.getsockname())
        yield sock.getsockname()[1]


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


@on_loops_at_once
async def test_socket_timeout_is_for_the_lookup_and_connecting_together():
    """A lookup that took nearly all of it leaves nearly nothing."""
    ends = []

    async def resolve(host):
        await asyncio.sleep(0.18)
        ends.append(time.monotonic())
        return (ipaddress.IPv4Address('127.0.0.1'),)

    [silent] = bound_to('127.0.0.1')
    with silent, full_backlog(silent) as port:
        async with pool(get_dns_resolver=resolving(resolve), socket_timeout=0.2) as request:
            await failed(
                request(b'GET', f'http://a.test:{port}/'), HttpConnectionError, TimeoutError)
    assert time.monotonic() - ends[0] < 0.15


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


# ------------------------------------------------------------------------------------ TLS

VERIFIED = {
    'an address': ('127.0.0.1', '127.0.0.1'),
    'a name': ('name.test', 'name.test'),
    'a name in capitals, with a dot': ('name.test', 'NAME.Test.'),
    'a name of a wildcard': ('*.name.test', 'www.name.test'),
    'one of many': ('other.test', 'name.test', 'name.test'),
    'a name in its own script': ('xn--bcher-kva.test', 'BÜCHER.test'),
}


@TLS_VERSIONS
@on_loops
async def test_a_certificate_for_the_host_is_accepted(version):
    options = {'get_ssl_context': trusting, 'get_dns_resolver': always('127.0.0.1')}
    for case, (*names, host) in VERIFIED.items():
        answering = Answering(OK)
        with row(case):
            async with (Server(answering, certified(*names, version=version)) as server,
                        pool(**options) as request):
                for _ in range(2):
                    assert (await get(request, f'https://{host}:{server.port}/'))[2] == b'ok'
            assert answering.connections == [0, 0]


LONG_AGO = datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC)
NOT_VERIFIED = {
    'another name': (('other.test',), {}, 'name.test', 'Hostname mismatch'),
    'an address for a name': (('127.0.0.1',), {}, 'name.test', 'Hostname mismatch'),
    'another address': (('127.0.0.2',), {}, '127.0.0.1', 'IP address mismatch'),
    'a name for an address': (('name.test',), {}, '127.0.0.1', 'IP address mismatch'),
    'a wildcard two labels up': (('*.test',), {}, 'www.name.test', 'Hostname mismatch'),
    'expired': (
        ('name.test',), {'not_before': LONG_AGO, 'not_after': LONG_AGO.replace(2002)},
        'name.test', 'certificate has expired'),
    'not valid yet': (
        ('name.test',),
        {'not_before': LONG_AGO.replace(2901), 'not_after': LONG_AGO.replace(2902)},
        'name.test', 'certificate is not yet valid'),
}


@on_loops
async def test_a_certificate_that_does_not_fit_is_refused():
    options = {'get_ssl_context': trusting, 'get_dns_resolver': always('127.0.0.1')}
    for case, (names, validity, host, text) in NOT_VERIFIED.items():
        answering = AnsweringInThreads()
        with row(case), ThreadServer(answering, certified(*names, **validity)) as server:
            async with pool(**options) as request:
                error = await failed(
                    request(b'GET', f'https://{host}:{server.port}/path?query'),
                    HttpTlsError, ssl.SSLCertVerificationError)
            assert str(error).startswith(
                f'GET https://{host}:{server.port} (peer 127.0.0.1:{server.port}): the TLS '
                'handshake failed: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: '
                + text)
            assert (error.reused, error.response_started) == (False, False)
            assert answering.socks == []


@on_loops
async def test_an_unknown_authority_is_refused_by_default():
    answering = AnsweringInThreads()
    with ThreadServer(answering, server_context()) as server:
        async with pool() as request:
            error = await failed(
                request(b'GET', server.url), HttpTlsError, ssl.SSLCertVerificationError)
    assert 'unable to get local issuer certificate' in str(error)
    assert answering.socks == []


@on_loops
async def test_the_server_is_told_the_canonical_name():
    told = []
    context = certified('name.test', 'xn--bcher-kva.test', '127.0.0.1')
    context.sni_callback = lambda sock, name, context: told.append(name)
    options = {'get_ssl_context': trusting, 'get_dns_resolver': always('127.0.0.1')}
    async with Server(Answering(OK), context) as server, pool(**options) as request:
        for host in ('NAME.test.', 'Bücher.test', '127.0.0.1'):
            await get(request, f'https://{host}:{server.port}/')
    assert told == ['name.test', 'xn--bcher-kva.test', None]  # RFC 6066 3: no addresses


@on_loops
async def test_the_ssl_context_is_got_once_at_the_first_https_request():
    got = []

    def get_ssl_context():
        got.append(trusting())
        return got[-1]

    options = {'get_ssl_context': get_ssl_context, 'keep_alive_timeout': 0}
    async with (Server(Answering(OK)) as plain, Server(Answering(OK), server_context()) as server,
                pool(**options) as request):
        await get(request, plain.url)
        assert got == []
        for _ in range(3):
            await get(request, server.url)
        await asyncio.gather(*[get(request, server.url) for _ in range(3)])
    assert len(got) == 1


@on_loops
async def test_an_ssl_context_that_can_not_be_made_is_an_error():
    contexts = [trusting()]

    def get_ssl_context():
        if not asked:
            asked.append(True)
            raise FileNotFoundError('no certificates')
        return contexts.pop()

    asked = []
    with ThreadServer(AnsweringInThreads(), server_context()) as server:
        async with pool(get_ssl_context=get_ssl_context) as request:
            await failed(
                request(b'GET', server.url), HttpTlsError, FileNotFoundError,
                f'{peer_prefix(server)}: the TLS handshake failed: FileNotFoundError: no '
                'certificates')
            assert (await get(request, server.url))[2] == b'ok'  # it was asked again


PROTOCOLS = {
    'the server knows none': (['http/1.1'], None, True),
    'both know http/1.1': (['http/1.1'], ['h2', 'http/1.1'], True),
    'both know http/1.0': (['http/1.0'], ['http/1.0'], True),
    'the server prefers http/1.1': (['h2', 'http/1.1'], ['http/1.1', 'h2'], True),
    'the server prefers h2': (['h2', 'http/1.1'], ['h2', 'http/1.1'], False),
}


@on_loops
async def test_only_http_1_is_spoken():
    for case, (offered, known, is_accepted) in PROTOCOLS.items():
        context = certified('127.0.0.1')
        if known:
            context.set_alpn_protocols(known)
        answering = AnsweringInThreads()
        with row(case), ThreadServer(answering, context) as server:
            async with pool(get_ssl_context=functools.partial(trusting, *offered)) as request:
                if is_accepted:
                    assert (await get(request, server.url))[2] == b'ok'
                    continue
                error = await failed(get(request, server.url), HttpTlsError, ssl.SSLError)
                assert str(error).startswith(f'{peer_prefix(server)}: the TLS handshake failed: ')
                assert str(error).endswith("the negotiated protocol must be http/1.1, got 'h2'")
                assert answering.socks == []


@on_loops
async def test_the_default_context_offers_http_1_1_alone():
    offered = []
    context = certified('127.0.0.1')
    context.set_alpn_protocols(['h2', 'http/1.1'])

    async def script(peer):
        offered.append(peer.writer.get_extra_info('ssl_object').selected_alpn_protocol())
        await Answering(OK)(peer)

    def get_ssl_context():
        default = inspect.signature(Pool).parameters['get_ssl_context'].default()
        assert default.verify_mode == ssl.CERT_REQUIRED
        assert default.check_hostname
        authority().configure_trust(default)
        return default

    async with (Server(script, context) as server,
                pool(get_ssl_context=get_ssl_context) as request):
        await get(request, server.url)
    assert offered == ['http/1.1']


def wanting_certificates(version=None):
    context = certified('127.0.0.1', version=version)
    context.verify_mode = ssl.CERT_REQUIRED
    authority().configure_trust(context)
    return context


@TLS_VERSIONS
@on_loops
async def test_a_client_certificate_is_sent(version):
    names = []

    async def script(peer):
        names.append(peer.writer.get_extra_info('peercert')['subjectAltName'])
        await Answering(OK)(peer)

    def get_ssl_context():
        context = trusting.__wrapped__()
        authority().issue_cert('client.test').configure_cert(context)
        return context

    async with (Server(script, wanting_certificates(version)) as server,
                pool(get_ssl_context=get_ssl_context) as request):
        assert (await get(request, server.url))[2] == b'ok'
    assert names == [(('DNS', 'client.test'),)]


@TLS_VERSIONS
@on_loops
async def test_a_client_certificate_that_is_missing_is_an_error(version):
    def script(listener, context):
        sock, _ = listener.accept()
        sock.settimeout(PATIENCE)
        with sock, context.wrap_socket(sock.dup(), server_side=True,
                                       do_handshake_on_connect=False) as tls:
            with contextlib.suppress(ssl.SSLError):
                tls.do_handshake()
            # Reads all, so that the alert is not overtaken by a reset.
            sock.shutdown(socket.SHUT_WR)
            receive_end(sock)

    with socket.create_server(('127.0.0.1', 0)) as listener:
        thread = threading.Thread(target=script, args=(listener, wanting_certificates(version)))
        thread.start()
        port = listener.getsockname()[1]
        async with pool(get_ssl_context=trusting) as request:
            # In TLS 1.3 the client's part of the handshake ends before the server looks at it.
            is_1_3 = version == TLS_1_3
            error = await failed(
                request(b'GET', f'https://127.0.0.1:{port}/'),
                HttpDataError if is_1_3 else HttpTlsError, ssl.SSLError)
        thread.join()
    prefix = f'GET https://127.0.0.1:{port} (peer 127.0.0.1:{port})'
    if is_1_3:
        prefix += ', reading the response head: SSLError: '
        assert 'CERTIFICATE_REQUIRED' in str(error)
    else:
        prefix += ': the TLS handshake failed: SSLError: '
        assert 'HANDSHAKE_FAILURE' in str(error)
    assert str(error).startswith(prefix)
    assert (error.reused, error.response_started) == (False, False)


def handshake_plain(sock):
    sock.recv(65536)
    sock.sendall(b'HTTP/1.1 400 Bad Request\r\n\r\n')
    receive_end(sock)


def handshake_closing(sock):
    sock.recv(65536)


def handshake_closing_in_a_record(sock):
    sock.recv(65536)
    sock.sendall(b'\x16\x03\x03\x40\x00half of it')


def handshake_reset(sock):
    sock.recv(1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))


def handshake_silent(sock):
    receive_end(sock)


def handshake_trickling(sock):
    """The first byte of a long record after the other, as if it were to end one day."""
    sock.sendall(b'\x16\x03\x03\x40\x00')
    while True:
        sock.sendall(b'\x02')
        time.sleep(0.01)


LATE = 'TimeoutError: socket_timeout, 0.2 seconds, passed'
HANDSHAKES = {
    'no TLS': (handshake_plain, ssl.SSLError, 'SSLError: '),
    'closed': (handshake_closing, ssl.SSLEOFError, 'SSLEOFError: '),
    'closed in a record': (handshake_closing_in_a_record, ssl.SSLEOFError, 'SSLEOFError: '),
    'reset': (handshake_reset, ConnectionResetError, 'ConnectionResetError: '),
    'silent': (handshake_silent, TimeoutError, LATE),
    'trickling': (handshake_trickling, TimeoutError, LATE),
}


@on_loops
async def test_a_handshake_that_does_not_succeed_is_an_error():
    async def check(request, case):
        script, cause, text = HANDSHAKES[case]
        with row(case), ThreadServer(script) as server:
            url = f'https://127.0.0.1:{server.port}'
            error = await failed(request(b'GET', url), HttpTlsError, cause)
            assert str(error).startswith(
                f'GET {url} (peer 127.0.0.1:{server.port}): the TLS handshake failed: {text}')
            assert (error.reused, error.response_started) == (False, False)

    context = trusting()
    cpu = time.process_time()
    async with pool(get_ssl_context=lambda: context, socket_timeout=0.2) as request:
        await asyncio.gather(*[check(request, case) for case in HANDSHAKES])
    assert time.process_time() - cpu < 0.1  # half of the time that it takes to wait


@on_loops
async def test_a_handshake_that_fails_is_not_tried_on_another_address():
    socks = bound_to('127.0.0.1', '127.0.0.2')
    answering = AnsweringInThreads()
    options = {'get_dns_resolver': always('127.0.0.1', '127.0.0.2'), 'get_ssl_context': trusting}
    with (ThreadServer(answering, certified('other.test'), socks[0]) as first,
          ThreadServer(answering, certified('name.test'), socks[1]) as second):
        async with pool(**options) as request:
            url = f'https://name.test:{first.port}/'
            await failed(request(b'GET', url), HttpTlsError, ssl.SSLCertVerificationError)
            assert second.socks == []
            # The next request takes the next address.
            assert (await get(request, url))[2] == b'ok'
            assert answering.socks == second.socks


CLOSE_DELIMITED = b'HTTP/1.1 200 OK\r\n\r\nsome'
CHUNKED = b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nsome\r\n'
SIZED = b'HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nsome'
TRUNCATED = ', reading the response body: SSLEOFError: '
ENDS_OF_A_TLS_STREAM = {
    'to the end, with close_notify': (CLOSE_DELIMITED, True, None, None),
    'to the end, without': (CLOSE_DELIMITED, False, ssl.SSLEOFError, TRUNCATED),
    'content-length, with close_notify': (SIZED + b'more', True, None, None),
    'content-length, without': (SIZED + b'more', False, None, None),
    'chunked, with close_notify': (CHUNKED + b'0\r\n\r\n', True, None, None),
    'chunked, without': (CHUNKED + b'0\r\n\r\n', False, None, None),
    'content-length, cut short, with close_notify': (
        SIZED, True, EOFError, ', reading the response body: the peer closed the connection, '
        '4 bytes before the end that content-length told'),
    'content-length, cut short, without': (SIZED, False, ssl.SSLEOFError, TRUNCATED),
    'chunked, cut short, with close_notify': (
        CHUNKED, True, EOFError, ', reading the response body: the peer closed the connection in '
        'a chunk-size line'),
    'chunked, cut short, without': (CHUNKED, False, ssl.SSLEOFError, TRUNCATED),
    'head, cut short, with close_notify': (
        b'HTTP/1.1 200', True, EOFError, ", reading the response head: the peer closed the "
        "connection, after b'HTTP/1.1 200'"),
    'head, cut short, without': (
        b'HTTP/1.1 200', False, ssl.SSLEOFError, ', reading the response head: SSLEOFError: '),
    'head, none of it, with close_notify': (
        b'', True, EOFError, ', reading the response head: the peer closed the connection, after '
        'no byte of it'),
    'head, none of it, without': (
        b'', False, ssl.SSLEOFError, ', reading the response head: SSLEOFError: '),
}


@TLS_VERSIONS
@on_loops
async def test_a_body_to_the_end_of_the_stream_needs_close_notify(version):
    """Whoever cuts the connection can not forge it. Where the end is told, nobody needs it."""
    cases = iter(ENDS_OF_A_TLS_STREAM.values())

    def script(sock):
        receive_head(sock)
        response, says_goodbye, _, _ = next(cases)
        sock.sendall(response)
        if says_goodbye:
            sock.unwrap()

    with ThreadServer(script, certified('127.0.0.1', version=version)) as server:
        async with pool(get_ssl_context=trusting, keep_alive_timeout=0) as request:
            for response, _, cause, text in ENDS_OF_A_TLS_STREAM.values():
                if cause is None:
                    assert (await get(request, server.url))[2] in (b'some', b'somemore')
                    continue
                error = await failed(get(request, server.url), HttpConnectionClosedError, cause)
                assert str(error).startswith(peer_prefix(server) + text)
                assert error.response_started == bool(response)


@TLS_VERSIONS
@on_loops
async def test_closing_says_goodbye_to_the_server(version):
    ends = []

    def script(sock):
        receive_head(sock)
        sock.sendall(OK)
        ends.append(receive_end(sock))  # raises SSLEOFError without close_notify

    with ThreadServer(script, certified('127.0.0.1', version=version)) as server:
        for _ in range(2):
            async with pool(get_ssl_context=trusting) as request:
                await get(request, server.url)
        await until(lambda: len(ends) == 2)
    assert ends == [b'', b'']


@TLS_VERSIONS
@on_loops
async def test_large_bodies_go_both_ways_over_tls(version):
    """In records of 16 KiB, of which a short read leaves bytes that no selector sees."""
    data = random.Random(1).randbytes(500_000)

    async def script(peer):
        for _ in range(2):
            await peer.read_head()
            received = await peer.read(len(data))
            peer.writer.write(
                b'HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b' % (len(data), received))
            await peer.writer.drain()
        await peer.closed()

    context = certified('127.0.0.1', version=version)
    for recv_bufsize in (1000, 16384, 65536):
        options = {'get_ssl_context': trusting, 'recv_bufsize': recv_bufsize}
        async with Server(script, context) as server, pool(**options) as request:
            for _ in range(2):
                _, _, body = await request(
                    b'POST', server.url, body=streamed(data),
                    headers=((b'content-length', b'%d' % len(data)),))
                assert await buffered(body) == data
            assert len(server.peers) == 1


@SCHEMES
@on_loops
async def test_a_response_is_read_a_few_bytes_at_a_time(scheme):
    response = CHUNKED + b'4\r\nmore\r\n0\r\nx-trailer: 1\r\n\r\n'
    for recv_bufsize in (1, 7, len(response)):
        answering = Answering(response)
        options = {'get_ssl_context': trusting, 'recv_bufsize': recv_bufsize}
        async with Server(answering, context_of(scheme)) as server, pool(**options) as request:
            for _ in range(3):
                _, _, body = await request(b'GET', server.url)
                assert await buffered(body) == b'somemore'
                assert body.trailers == ((b'x-trailer', b'1'),)
        assert answering.connections == [0, 0, 0]


def small_sending_sock(family, descriptors=None):
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    if descriptors is not None:
        descriptors.append(sock.fileno())
    return sock


@functools.cache
def trusting_with_large_certificate(names):
    """With a client's certificate of 64 bytes a name. To send one that is larger than the
    buffers of its socket, or when they are full, the client has to wait for the server."""
    context = trusting.__wrapped__()
    context.post_handshake_auth = True
    certificate = authority().issue_cert(*[f'{number:060}.test' for number in range(names)])
    certificate.configure_cert(context)
    return context


@TLS_VERSIONS
@on_loops
async def test_a_handshake_may_have_to_wait_to_send(version):
    lengths = []

    def script(sock):
        lengths.append(len(sock.getpeercert(binary_form=True)))
        receive_head(sock)
        sock.sendall(OK)
        receive_end(sock)

    with ThreadServer(script, wanting_certificates(version)) as server:
        server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        options = {'get_ssl_context': lambda: trusting_with_large_certificate(800),
                   'get_sock': small_sending_sock}
        async with pool(**options) as request:
            assert (await get(request, server.url))[2] == b'ok'
    assert lengths[0] > 40_000


@on_loops
async def test_a_final_response_in_the_record_of_an_interim_one_is_read_however_small_the_reads():
    interim = b'HTTP/1.1 103 Early\r\n\r\n'
    async with (Server(Answering(interim + OK), server_context()) as server,
                pool(get_ssl_context=trusting, recv_bufsize=len(interim)) as request):
        assert (await get(request, server.url))[2] == b'ok'


@on_loops
async def test_a_record_that_has_come_in_part_is_waited_for():
    async def script(peer):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = server_context().wrap_bio(incoming, outgoing, server_side=True)

        async def until_done(function, *args):
            while True:
                try:
                    return function(*args)
                except ssl.SSLWantReadError:
                    await peer.send(outgoing.read())
                    incoming.write(await peer.reader.read(65536))

        await until_done(tls.do_handshake)
        assert (await until_done(tls.read, 65536)).endswith(b'\r\n\r\n')
        tls.write(OK[:-1])
        await peer.send(outgoing.read())
        tls.write(OK[-1:])
        record = outgoing.read()
        await has_head.wait()
        await peer.send(record[:7])
        await is_reading.wait()
        await peer.send(record[7:])
        await peer.closed()

    def get_sock(family):
        socks.append(socket.socket(family))
        # TLS takes the socket over, but not its descriptor.
        poller.register(socks[0].fileno(), select.POLLIN)
        return socks[0]

    socks = []
    poller = select.poll()
    has_head, is_reading = asyncio.Event(), asyncio.Event()
    async with Server(script) as server, pool(
            get_sock=get_sock, get_ssl_context=trusting) as request:
        _, _, body = await request(b'GET', f'https://127.0.0.1:{server.port}/')
        assert await anext(body) == b'o'
        has_head.set()
        await until(lambda: poller.poll(0))
        reading = asyncio.create_task(buffered(body))
        await turns(5)
        assert not reading.done()
        is_reading.set()
        assert await reading == b'k'


class WantingToWrite(ssl.SSLSocket):
    """To read on, it must first write: as in a renegotiation, or for a certificate that the
    server asks for late, when the buffers are full."""

    wants = 0

    def recv(self, *args):
        if self.wants:
            type(self).wants -= 1
            raise ssl.SSLWantWriteError(ssl.SSL_ERROR_WANT_WRITE, 'The operation did not complete')
        return super().recv(*args)


def wanting_to_write():
    context = trusting()
    context.sslsocket_class = WantingToWrite
    return context


@pytest.mark.parametrize('wants', [1, 2, 3])
@on_loops
async def test_reading_a_head_may_have_to_wait_to_send(wants):
    async with (Server(Answering(OK), server_context()) as server,
                pool(get_ssl_context=wanting_to_write) as request):
        WantingToWrite.wants = wants
        assert (await get(request, server.url))[2] == b'ok'
        assert WantingToWrite.wants == 0


@pytest.mark.parametrize('wants', [1, 2, 3])
@pytest.mark.parametrize('is_there', [False, True])
@on_loops
async def test_reading_a_body_may_have_to_wait_to_send(wants, is_there):
    async def script(peer):
        await peer.read_head()
        await peer.send(OK[:-1])
        if not is_there:
            await is_waiting.wait()
        await peer.send(OK[-1:])
        is_sent.set()
        await peer.closed()

    is_waiting, is_sent = asyncio.Event(), asyncio.Event()
    async with (Server(script, server_context()) as server,
                pool(get_ssl_context=wanting_to_write) as request):
        _, _, body = await request(b'GET', server.url)
        assert await anext(body) == b'o'
        if is_there:
            await is_sent.wait()
        WantingToWrite.wants = wants
        reading = asyncio.create_task(buffered(body))
        await turns(5)
        is_waiting.set()
        assert await reading == b'k'
        assert WantingToWrite.wants == 0


class Openssl:
    """The server's end of TLS, with what the ssl module does not offer."""

    FILETYPE_PEM = 1
    MAX_PROTO_VERSION = 124
    KEY_UPDATE_REQUESTED = 1

    def __init__(self, sock, version):
        sock.settimeout(None)
        self.context = self.call('SSL_CTX_new', self.call('TLS_server_method'))
        self.call('SSL_CTX_ctrl', self.context, self.MAX_PROTO_VERSION, int(version), None)
        chain = authority().issue_cert('127.0.0.1').private_key_and_cert_chain_pem
        with chain.tempfile() as path:
            self.call('SSL_CTX_use_certificate_chain_file', self.context, path.encode())
            self.call('SSL_CTX_use_PrivateKey_file', self.context, path.encode(),
                      self.FILETYPE_PEM)
        self.ssl = self.call('SSL_new', self.context)
        self.call('SSL_set_fd', self.ssl, sock.fileno())
        self.call('SSL_accept', self.ssl)

    @staticmethod
    @functools.cache
    def library():
        try:
            library = ctypes.CDLL(_ssl.__file__)
            functions = [getattr(library, name) for name in (
                'SSL_CTX_new', 'TLS_server_method', 'SSL_new', 'SSL_renegotiate')]
        except (AttributeError, OSError):
            return None
        for function in functions:
            function.restype = ctypes.c_void_p
        library.SSL_renegotiate.restype = ctypes.c_int
        return library

    def call(self, name, *args):
        """Call a function of OpenSSL, in which a result of 0 or less is a failure."""
        result = getattr(self.library(), name)(
            *[ctypes.c_void_p(arg) if isinstance(arg, int) and arg > 2 ** 16 else arg
              for arg in args])
        if result <= 0:
            raise ConnectionError(f'{name} failed with {result}')
        return result

    def receive_head(self):
        data = b''
        buffer = ctypes.create_string_buffer(65536)
        while not data.endswith(b'\r\n\r\n'):
            length = self.call('SSL_read', self.ssl, buffer, len(buffer))
            data += buffer.raw[:length]
        return data

    def send(self, data):
        self.call('SSL_write', self.ssl, data, len(data))

    def free(self):
        self.library().SSL_free(ctypes.c_void_p(self.ssl))
        self.library().SSL_CTX_free(ctypes.c_void_p(self.context))


def send_hello_request(tls):
    tls.call('SSL_renegotiate', tls.ssl)
    tls.call('SSL_do_handshake', tls.ssl)


def send_key_update(tls):
    tls.call('SSL_key_update', tls.ssl, Openssl.KEY_UPDATE_REQUESTED)
    tls.call('SSL_do_handshake', tls.ssl)


def send_session_ticket(tls):
    tls.call('SSL_new_session_ticket', tls.ssl)
    tls.call('SSL_do_handshake', tls.ssl)


OWN_MESSAGES = {
    'a renegotiation': (send_hello_request, TLS_1_2),
    'a key update': (send_key_update, TLS_1_3),
    'a session ticket': (send_session_ticket, TLS_1_3),
}


@pytest.mark.parametrize('is_blocked', [False, True], ids=['loop free', 'loop blocked'])
@pytest.mark.parametrize('case', OWN_MESSAGES)
@on_loops
async def test_what_tls_itself_sends_does_not_close_an_idle_connection(case, is_blocked):
    if Openssl.library() is None:
        pytest.skip('the ssl module keeps its OpenSSL to itself')
    send, version = OWN_MESSAGES[case]
    is_idle, is_sent, go_on = (threading.Event() for _ in range(3))
    results = []

    def script(sock):
        tls = Openssl(sock, version)
        try:
            tls.receive_head()
            tls.send(OK)
            is_idle.wait(PATIENCE)
            send(tls)
            is_sent.set()
            go_on.wait(PATIENCE)
            tls.receive_head()
            tls.send(OK)
            receive_end(sock)
        finally:
            tls.free()

    with ThreadServer(script) as server:
        async with pool(get_ssl_context=trusting) as request:
            url = f'https://127.0.0.1:{server.port}/'
            await get(request, url)
            is_idle.set()
            if is_blocked:
                is_sent.wait(PATIENCE)
                time.sleep(0.005)  # so that it is looked at, and not by its reader
            else:
                await until(is_sent.is_set)
                await turns(5)
            task = asyncio.create_task(get(request, url))
            # A renegotiation goes on while the request is sent: the write wants to read.
            await turns(5)
            go_on.set()
            results.append((await task)[2])
        assert results == [b'ok']
        assert len(server.socks) == 1


@on_loops_at_once
async def test_a_renegotiation_in_which_the_server_falls_silent_is_an_error():
    if Openssl.library() is None:
        pytest.skip('the ssl module keeps its OpenSSL to itself')
    is_idle, is_sent, is_over = (threading.Event() for _ in range(3))

    def script(sock):
        tls = Openssl(sock, TLS_1_2)
        try:
            tls.receive_head()
            tls.send(OK)
            is_idle.wait(PATIENCE)
            send_hello_request(tls)
            is_sent.set()
            is_over.wait(PATIENCE)
        finally:
            tls.free()

    with ThreadServer(script) as server:
        async with pool(get_ssl_context=trusting, socket_timeout=0.1) as request:
            url = f'https://127.0.0.1:{server.port}'
            await get(request, url)
            await asyncio.sleep(0.11)  # its time is that of the request
            is_idle.set()
            await until(is_sent.is_set)
            error = await failed(
                request(b'GET', url), HttpDataError, TimeoutError,
                f'GET {url} (peer 127.0.0.1:{server.port}), sending the request: TimeoutError: '
                'socket_timeout, 0.1 seconds, passed')
            assert (error.reused, error.response_started) == (True, False)
            is_over.set()


# ---------------------------------------------------------------------- idle connections

@SCHEMES
@on_loops
async def test_a_connection_is_reused(scheme):
    answering = Answering(OK)
    async with (Server(answering, context_of(scheme)) as server,
                pool(get_ssl_context=trusting) as request):
        for _ in range(3):
            assert (await get(request, server.url))[2] == b'ok'
    assert answering.connections == [0, 0, 0]


@on_loops
async def test_the_connection_released_last_is_reused_first():
    gates = [asyncio.Event() for _ in range(3)]
    released = []
    answering = Answering(OK[:-1])

    async def script(peer):
        await peer.read_head()
        await gates[peer.index].wait()
        await peer.send(OK)
        await answering(peer)

    async def get_first(request, url):
        released.append(await get(request, url))

    async with Server(script) as server, pool() as request, asyncio.TaskGroup() as group:
        for _ in gates:
            group.create_task(get_first(request, server.url))
        await until(lambda: len(server.peers) == 3)
        for number, index in enumerate((1, 2, 0), 1):
            gates[index].set()
            await until(lambda: len(released) == number)  # noqa: B023
        # Each of these, its body not whole, keeps the connection that it has.
        responses = [await request(b'GET', server.url) for _ in range(3)]
        assert answering.connections == [0, 2, 1]
        for _, _, body in responses:
            await body.aclose()


@on_loops
async def test_origins_never_share_connections():
    answering = Answering(OK)
    options = {'get_ssl_context': trusting, 'get_dns_resolver': always('127.0.0.1')}
    context = certified('127.0.0.1', 'name.test')
    async with (Server(answering) as plain, Server(answering) as other,
                Server(answering, context) as tls, pool(**options) as request):
        for _ in range(2):
            for server, host in ((plain, '127.0.0.1'), (plain, 'name.test'), (plain, 'a.test'),
                                 (other, '127.0.0.1'), (tls, '127.0.0.1'), (tls, 'name.test')):
                scheme = 'https' if server is tls else 'http'
                await get(request, f'{scheme}://{host}:{server.port}/')
        assert [len(server.peers) for server in (plain, other, tls)] == [3, 1, 2]


@on_loops
async def test_the_spellings_of_an_origin_share_a_connection():
    answering = Answering(OK)
    async with (Server(answering) as server,
                pool(get_dns_resolver=always('127.0.0.1')) as request):
        for start in ('http://name.test', 'HTTP://NAME.TEST', 'http://name.test.'):
            await get(request, f'{start}:{server.port}/')
    assert answering.connections == [0, 0, 0]


async def ends_of_idle(respond, **options):
    """Respond to one request, and return what the server sees after its response."""
    ends = []

    async def script(peer):
        await peer.read_head()
        await respond(peer)
        ends.append(await peer.closed())

    request, close = Pool(**options)
    async with Server(script) as server:
        assert (await get(request, server.url))[2] == b'ok'
        await until(lambda: ends)  # and this before `close`
        await close()
    return ends


def kept_alive_for(seconds):
    return OK.replace(b'\r\n\r\n', b'\r\nkeep-alive: timeout=%d\r\n\r\n' % seconds)


# The option, the response, and the seconds after which an idle connection closes.
IDLE_TIMES = {
    'the option alone': (0.05, OK, 0.05),
    'the server allows more': (0.05, kept_alive_for(100), 0.05),
    'the server allows less: a second less, for the way': (15, kept_alive_for(2), 1),
    'the server allows a second': (15, kept_alive_for(1), 0),
    'the server allows none': (15, kept_alive_for(0), 0),
    'off': (0, OK, 0),
    'off, whatever the server allows': (0, kept_alive_for(100), 0),
}


@on_loops_at_once
async def test_an_idle_connection_closes_when_its_time_is_over():
    async def check(case):
        keep_alive_timeout, response, seconds = IDLE_TIMES[case]
        started = time.monotonic()
        with row(case):
            ends = await ends_of_idle(
                lambda peer: peer.send(response), keep_alive_timeout=keep_alive_timeout)
            assert ends == [b'']
            assert seconds - 0.005 <= time.monotonic() - started < seconds + 0.5

    await asyncio.gather(*[check(case) for case in IDLE_TIMES])


@on_loops_at_once
async def test_keep_alive_timeout_begins_anew_with_each_response():
    answering = Answering(OK)
    async with Server(answering) as server, pool(keep_alive_timeout=0.15) as request:
        for _ in range(5):
            await get(request, server.url)
            await asyncio.sleep(0.05)
    assert answering.connections == [0] * 5


@on_loops_at_once
async def test_keep_alive_timeout_does_not_end_a_response():
    async def script(peer):
        await peer.read_head()
        await peer.send(OK)
        await peer.read_head()
        await asyncio.sleep(0.12)
        await peer.send(OK[:-1])
        await asyncio.sleep(0.12)
        await peer.send(OK[-1:])
        await peer.closed()

    async with Server(script) as server, pool(keep_alive_timeout=0.1) as request:
        for _ in range(2):
            assert (await get(request, server.url))[2] == b'ok'
        assert len(server.peers) == 1


@on_loops
async def test_a_connection_past_its_keep_alive_timeout_is_not_reused_by_a_late_loop():
    answering = Answering(OK)
    async with Server(answering) as server, pool(keep_alive_timeout=0.01) as request:
        await get(request, server.url)
        time.sleep(0.02)
        await get(request, server.url)
    assert answering.connections == [0, 1]


@on_loops
async def test_a_peer_that_hangs_up_while_idle_is_closed_at_once():
    async def respond(peer):
        await peer.send(OK)
        await turns(10)
        peer.writer.write_eof()

    assert await ends_of_idle(respond) == [b'']


@on_loops
async def test_a_peer_that_hangs_up_is_noticed_when_the_body_had_to_wait_for_its_reader():
    # The loop stops looking at what nobody reads, and has to begin again.
    async def script(peer):
        await peer.read_head()
        await peer.send(OK[:-2])
        await has_head.wait()
        await peer.send(OK[-2:])
        has_come.set()
        await is_read.wait()
        peer.writer.write_eof()
        ends.append(await peer.closed())

    has_head, has_come, is_read, ends = asyncio.Event(), asyncio.Event(), asyncio.Event(), []
    async with Server(script) as server, pool(keep_alive_timeout=1000) as request:
        _, _, body = await request(b'GET', server.url)
        has_head.set()
        await has_come.wait()
        await turns(5)
        assert await buffered(body) == b'ok'
        is_read.set()
        await until(lambda: ends == [b''])


@on_loops
async def test_data_on_an_idle_connection_closes_it_at_once():
    async def respond(peer):
        await peer.send(OK)
        await turns(10)
        await peer.send(FORGED)

    assert await ends_of_idle(respond) == [b'']


@on_loops
async def test_a_peer_that_resets_while_idle_is_closed_at_once():
    is_reset = asyncio.Event()

    async def script(peer):
        await peer.read_head()
        await peer.send(OK)
        await is_reset.wait()
        peer.reset()

    async with Server(script) as server, pool() as request:
        await get(request, server.url)
        await turns(5)
        before = open_descriptors()
        is_reset.set()
        await until(lambda: len(before - open_descriptors()) == 2)  # both ends


@pytest.mark.parametrize('closed', [0, 1])
@on_loops
async def test_of_two_idle_connections_the_one_that_closed_is_forgotten(closed):
    async def script(peer):
        try:
            while True:
                await peer.read_head()
                connections.append(peer.index)
                await until(lambda: len(connections) >= 2)
                await peer.send(OK)
        finally:
            ended.append(peer.index)

    connections, ended = [], []
    async with Server(script) as server, pool() as request:
        await asyncio.gather(*[get(request, server.url) for _ in range(2)])
        server.peers[closed].writer.write_eof()
        await until(lambda: ended == [closed])
        await asyncio.gather(*[get(request, server.url) for _ in range(2)])
    assert sorted(connections[2:]) == [1 - closed, 2]


# What a server does, over a connection that idles while the loop is blocked.
def send_data(sock):
    sock.sendall(FORGED)


def send_end(sock):
    socket.socket.shutdown(sock, socket.SHUT_WR)


def send_goodbye(sock):
    with contextlib.suppress(OSError):
        sock.settimeout(0)
        sock.unwrap()


def send_reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    socket.socket.close(sock)


UNSEEN = {
    'data': ('http', send_data),
    'end': ('http', send_end),
    'reset': ('http', send_reset),
    'data in TLS': ('https', send_data),
    'end in TLS': ('https', send_end),
    'close_notify': ('https', send_goodbye),
    'reset in TLS': ('https', send_reset),
}


class Poisoning:
    """A script that answers one request and, once told to, does something over its idle
    connection. Other connections it answers as they want."""

    def __init__(self, act):
        self.act = act
        self.is_first = True
        self.go_on = threading.Event()
        self.is_done = threading.Event()

    def __call__(self, sock):
        is_first, self.is_first = self.is_first, False
        receive_head(sock)
        sock.sendall(OK)
        if is_first:
            self.go_on.wait(PATIENCE)
            self.act(sock)
            self.is_done.set()
            receive_end(sock)
        else:
            AnsweringInThreads()(sock)

    def act_while_the_loop_is_blocked(self):
        self.go_on.set()
        assert self.is_done.wait(PATIENCE)
        time.sleep(0.003)


@on_loops
async def test_an_idle_connection_is_looked_at_before_its_reuse():
    """What came while the loop was blocked, the loop has not seen."""
    for case, (scheme, act) in UNSEEN.items():
        script = Poisoning(act)
        with row(case), ThreadServer(script, context_of(scheme)) as server:
            async with pool(get_ssl_context=trusting) as request:
                await get(request, server.url)
                script.act_while_the_loop_is_blocked()
                assert (await get(request, server.url))[2] == b'ok'
                assert (await get(request, server.url))[2] == b'ok'
                assert len(server.socks) == 2


@on_loops
async def test_a_connection_that_idled_while_a_resolver_blocked_the_loop_is_looked_at():
    script = Poisoning(send_data)
    names = []

    async def resolve(host):
        names.append(host)
        if len(names) == 2:
            script.act_while_the_loop_is_blocked()
        return (ipaddress.IPv4Address('127.0.0.1'),)

    with ThreadServer(script) as server:
        async with pool(get_dns_resolver=resolving(resolve)) as request:
            for _ in range(3):
                # Without a turn of the loop in between.
                body = (await get(request, f'http://a.test:{server.port}/'))[2]
                assert body == b'ok'


@on_loops
async def test_a_connection_that_expired_while_a_resolver_blocked_the_loop_is_not_reused():
    answering = Answering(OK)
    names = []

    async def resolve(host):
        names.append(host)
        if len(names) == 2:
            time.sleep(0.02)
        return (ipaddress.IPv4Address('127.0.0.1'),)

    options = {'get_dns_resolver': resolving(resolve), 'keep_alive_timeout': 0.01}
    async with Server(answering) as server, pool(**options) as request:
        for _ in range(2):
            await get(request, f'http://a.test:{server.port}/')
    assert answering.connections == [0, 1]


@on_loops
async def test_a_forged_response_in_a_tls_record_of_its_own_is_not_delivered():
    """It came together with the response before it, but is read apart from that."""
    def script(sock):
        while True:
            receive_head(sock)
            # Both records leave in one segment.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
            sock.sendall(OK)
            sock.sendall(FORGED)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)

    with ThreadServer(script, server_context()) as server:
        async with pool(get_ssl_context=trusting) as request:
            for _ in range(20):
                assert (await get(request, server.url))[2] == b'ok'


class RawTls:
    """The server's end of TLS over a socket, whose records are sent as the caller likes."""

    def __init__(self, sock, version):
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = server_context()
        context.minimum_version = context.maximum_version = version
        context.num_tickets = 0  # which would come after the handshake
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)

    async def run(self, function):
        """Until it neither wants to read nor has written what has not been sent."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                result = function()
            except ssl.SSLWantReadError:
                await loop.sock_sendall(self.sock, self.outgoing.read())
                self.incoming.write(await loop.sock_recv(self.sock, 65536))
            else:
                await loop.sock_sendall(self.sock, self.outgoing.read())
                return result

    def record(self, data):
        self.tls.write(data)
        return self.outgoing.read()


@pytest.mark.parametrize('length', [1, 4, 5, 6, 40, -1])
@TLS_VERSIONS
@on_loops
async def test_the_beginning_of_a_tls_record_is_unasked_for(version, length):
    """What it begins may be an answer to a request that has not been made yet."""
    async def get_connection(scheme, host, port):
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        servers.append(stack.enter_context(theirs))
        return ours

    async def serve():
        server = RawTls(servers[-1], version)
        await server.run(server.tls.do_handshake)
        await server.run(lambda: server.tls.read(65536))
        await asyncio.get_running_loop().sock_sendall(server.sock, server.record(OK))
        return server

    servers = []
    options = {'get_connection': get_connection, 'get_ssl_context': trusting}
    with contextlib.ExitStack() as stack:
        for waits in (turns(5), turns(0)):
            async with pool(**options) as request:
                task = asyncio.create_task(get(request, 'https://127.0.0.1/'))
                await until(lambda: servers)
                server = await serve()
                assert (await task)[2] == b'ok'
                record = server.record(FORGED)
                server.sock.send(record[:length])
                await waits
                task = asyncio.create_task(get(request, 'https://127.0.0.1/'))
                await until(lambda: len(servers) == 2)
                with contextlib.suppress(OSError):
                    server.sock.send(record[length:])
                await serve()
                assert (await task)[2] == b'ok'
            servers.clear()


@on_loops
async def test_what_the_system_says_to_closing_a_socket_is_of_no_interest():
    class Failing(socket.socket):
        def close(self):
            super().close()
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        def getpeername(self):
            if is_bad:
                raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
            return super().getpeername()

        def setblocking(self, flag):
            if is_bad:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            super().setblocking(flag)

    async def get_connection(scheme, host, port):
        sock = Failing()
        is_bad or sock.connect(('127.0.0.1', port))
        return sock

    options = {'max_connections': 1, 'keep_alive_timeout': 0}
    for hook in ({'get_connection': get_connection}, {'get_sock': Failing}):
        for is_bad in (True, False):
            async with (Server(Answering(OK)) as server,
                        pool(**hook, **options) as request):
                for _ in range(3):
                    if is_bad:
                        await failed(get(request, server.url), HttpConnectionError, OSError)
                    else:
                        assert (await get(request, server.url))[2] == b'ok'


@on_loops
async def test_a_forged_response_that_came_before_its_request_is_not_delivered():
    """Of two, the second comes after the first was read from the socket, and before the task
    that waits for it could go on."""
    with socket.create_server(('127.0.0.1', 0)) as listener:
        url = f'http://127.0.0.1:{listener.getsockname()[1]}/'

        async def get_two(request):
            return [(await get(request, url))[2] for _ in range(2)]

        async with pool(socket_timeout=0.05) as request:
            for ahead in itertools.count():
                task = asyncio.create_task(get_two(request))
                await turns(5)
                sock, _ = listener.accept()
                with sock:
                    receive_head(sock)
                    sock.sendall(OK)
                    await turns(ahead)
                    is_too_late = select.select([sock], [], [], 0)[0]
                    sock.sendall(FORGED)
                    # The second request times out: nobody accepts its connection.
                    [result] = await asyncio.gather(task, return_exceptions=True)
                if is_too_late:
                    break
                assert type(result) is HttpDataError
                listener.accept()[0].close()
        assert ahead >= 2


@on_loops
async def test_close_closes_idle_connections_at_once():
    ends = []

    async def script(peer):
        await peer.read_head()
        await peer.send(OK)
        ends.append(await peer.closed())

    request, close = Pool()
    async with Server(script) as server, Server(script) as other:
        await asyncio.gather(*[get(request, url) for url in (server.url, server.url, other.url)])
        await turns(5)
        assert ends == []
        await close()
        await until(lambda: ends == [b'', b'', b''])


@SCHEMES
@on_loops
async def test_close_lets_a_response_end_and_then_closes(scheme):
    ends = []
    go_on = asyncio.Event()

    async def script(peer):
        await peer.read_head()
        await peer.send(OK[:-1])
        await go_on.wait()
        await peer.send(OK[-1:])
        ends.append(await peer.closed())

    request, close = Pool(get_ssl_context=trusting)
    async with Server(script, context_of(scheme)) as server:
        _, _, body = await request(b'GET', server.url)
        waiting = asyncio.create_task(request(b'GET', server.url))
        await turns(5)
        await close()
        await turns(5)
        assert ends == []
        go_on.set()
        assert await buffered(body) == b'ok'
        _, _, body = await waiting
        assert await buffered(body) == b'ok'
        await until(lambda: ends == [b'', b''])


@on_loops
async def test_a_descriptor_may_be_0():
    """As in a process that has closed its standard input."""
    descriptors = []

    def get_sock(family):
        sock = socket.socket(family)
        descriptors.append(sock.fileno())
        return sock

    async def script(peer):
        await peer.read_head()
        await peer.send(OK[:-1], OK[-1:])
        await peer.closed()
        ended.set_result(None)

    ended = asyncio.get_running_loop().create_future()
    async with Server(script) as server:
        stdin = os.dup(0)
        os.close(0)
        try:
            async with pool(get_sock=get_sock) as request:
                assert (await get(request, server.url))[2] == b'ok'
            await ended
        finally:
            os.dup2(stdin, 0)
            os.close(stdin)
    assert descriptors == [0]


@on_loops
async def test_a_closed_pool_refuses_requests():
    request, close = Pool()
    async with Server(Answering(OK)) as server:
        for _ in range(2):
            await close()
            error = await failed(
                request(b'GET', server.url + 'path?query'), HttpConnectionError, RuntimeError,
                f'GET {server.origin}, refused: the pool is closed')
            assert (error.reused, error.response_started) == (False, False)
    assert server.peers == []


@on_loops
async def test_a_pool_that_is_dropped_keeps_nothing_for_long():
    socks = weakref.WeakSet()

    def get_sock(family):
        sock = socket.socket(family)
        socks.add(sock)
        return sock

    async with Server(Answering(OK)) as server:
        request, _ = Pool(get_sock=get_sock, keep_alive_timeout=0.02)
        await get(request, server.url)
        del request, _
        gc.collect()
        await until(lambda: not socks)


# --------------------------------------------------------------------------- one exchange

FACTS = {
    'closed before any byte': (
        b'', HttpConnectionClosedError, EOFError, False,
        ', reading the response head: the peer closed the connection, after no byte of it'),
    'closed in the head': (
        b'HTTP/1.1 2', HttpConnectionClosedError, EOFError, True,
        ", reading the response head: the peer closed the connection, after b'HTTP/1.1 2'"),
    'closed after an interim response': (
        b'HTTP/1.1 102 Processing\r\n\r\n', HttpConnectionClosedError, EOFError, True,
        ', reading the response head: the peer closed the connection, after no byte of it'),
    'closed in the body': (
        OK[:-1], HttpConnectionClosedError, EOFError, True,
        ', reading the response body: the peer closed the connection, 1 bytes before the end that '
        'content-length told'),
    'a head that is bad': (
        b'HTTP/2 200\r\n\r\n', HttpDataError, ValueError, True,
        ', reading the response head: bad status line: expected HTTP/1.x, a space, '
        "three digits and a reason, got b'HTTP/2 200\\r'"),
    'an upgrade that nobody wanted': (
        b'HTTP/1.1 101 Switching Protocols\r\n\r\n', HttpDataError, ValueError, True,
        ', reading the response head: got 101 Switching Protocols, but the request had no '
        'upgrade'),
}


@pytest.mark.parametrize('is_reused', [False, True], ids=['fresh', 'reused'])
@on_loops
async def test_an_error_tells_what_retries_depend_on(is_reused):
    ends = []

    async def script(peer):
        if is_reused:
            await peer.read_head()
            await peer.send(OK)
        await peer.read_head()
        await peer.send(response)
        peer.writer.write_eof()
        ends.append(await peer.closed())

    async with Server(script) as server, pool() as request:
        for case, (response, kind, cause, is_started, text) in FACTS.items():  # noqa: B007
            ends.clear()
            with row(case):
                if is_reused:
                    await get(request, server.url)
                may_be_tls = not is_reused and kind is HttpConnectionClosedError and not is_started
                error = await failed(
                    get(request, server.url + 'path?query'), kind, cause,
                    peer_prefix(server) + text + MAY_BE_TLS * may_be_tls)
                assert (error.reused, error.response_started) == (is_reused, is_started)
                await until(lambda: ends == [b''])


@on_loops
async def test_a_head_that_is_too_long_is_an_error_of_its_own():
    response = b'HTTP/1.1 200 OK\r\nx: %b\r\n\r\n' % (b'y' * 100)
    async with Server(Answering(response)) as server, pool(max_header_length=50) as request:
        with pytest.raises(lowhaio.HttpError) as caught:
            await get(request, server.url)
    assert type(caught.value) is HttpHeaderTooLong
    assert isinstance(caught.value.__cause__, ValueError)
    assert str(caught.value) == (
        f'{peer_prefix(server)}, reading the response head: the head is longer than '
        'max_header_length, 50 bytes')
    assert caught.value.response_started


@on_loops
async def test_a_reset_is_the_end_of_a_connection():
    async def script(peer):
        await peer.read_head()
        await peer.send(OK[:-1])
        peer.reset()

    async with Server(script) as server, pool() as request:
        error = await failed(
            get(request, server.url), HttpConnectionClosedError, ConnectionResetError)
    assert str(error) == (f'{peer_prefix(server)}, reading the response body: '
                          + system_error(ConnectionResetError, errno.ECONNRESET))
    assert error.response_started


@on_loops
async def test_a_request_of_which_no_byte_could_be_sent_is_safe_to_retry():
    socks = []

    def get_sock(family):
        socks.append(socket.socket(family))
        return socks[-1]

    async def body():
        socks[0].shutdown(socket.SHUT_WR)
        yield b'ok'

    async with Server(Answering(OK)) as server, pool(get_sock=get_sock) as request:
        for is_reused in (False, True):
            if is_reused:
                socks.clear()
                await get(request, server.url)
            error = await failed(
                request(b'PUT', server.url, headers=((b'content-length', b'2'),), body=body),
                HttpConnectionError, BrokenPipeError,
                f'{peer_prefix(server, "PUT")}, sending the request: '
                + system_error(BrokenPipeError, errno.EPIPE))
            assert (error.reused, error.response_started) == (is_reused, False)
    assert len(server.peers) == 2


@on_loops
async def test_a_request_of_which_bytes_were_sent_is_not():
    socks = []

    def get_sock(family):
        socks.append(socket.socket(family))
        return socks[-1]

    async def body():
        yield b'o'
        socks[0].shutdown(socket.SHUT_WR)
        yield b'k'

    async with Server(Answering(OK)) as server, pool(get_sock=get_sock) as request:
        error = await failed(
            request(b'PUT', server.url, headers=((b'content-length', b'2'),), body=body),
            HttpConnectionClosedError, BrokenPipeError)
        assert (error.reused, error.response_started) == (False, False)


async def body_ending_when_cancelled():
    yield await cancelled_in_vain()


async def body_cleaning_up_when_cancelled():
    try:
        yield await asyncio.get_running_loop().create_future()
    finally:
        await asyncio.sleep(0)


async def body_failing_when_cancelled():
    try:
        yield await asyncio.get_running_loop().create_future()
    except asyncio.CancelledError:
        await asyncio.sleep(0)
        raise LookupError from None


async def cancelled_in_vain():
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.get_running_loop().create_future()
    return b'ok'


@pytest.mark.parametrize('body', [
    body_ending_when_cancelled, body_cleaning_up_when_cancelled, body_failing_when_cancelled])
@on_loops
async def test_a_body_that_waits_when_its_head_can_not_be_sent_is_cancelled(body):
    socks = []
    ends = []

    def get_sock(family):
        socks.append(socket.socket(family))
        return socks[-1]

    async def observed():
        socks[0].shutdown(socket.SHUT_WR)
        chunks = body()
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            await chunks.aclose()
            ends.append(True)

    async with Server(Answering(OK)) as server, pool(get_sock=get_sock) as request:
        await failed(
            request(b'PUT', server.url, headers=((b'content-length', b'2'),), body=observed),
            HttpConnectionError, BrokenPipeError)
        assert ends == [True]


# -------------------------------------------------------------------------------- timeouts

PASSED = 'TimeoutError: socket_timeout, 0.15 seconds, passed'
IN_HEAD = f', reading the response head: {PASSED}'
IN_BODY = f', reading the response body: {PASSED}'
SILENCES = {
    'no byte of the head': ((), False, IN_HEAD),
    'part of the head': ((b'HTTP/1.1 200 OK\r\nx',), True, IN_HEAD),
    'no byte after an interim response': (
        (b'HTTP/1.1 102 Processing\r\n\r\n',), True, IN_HEAD),
    'no byte of the body': ((OK[:-2],), True, IN_BODY),
    'part of the body': ((OK[:-1],), True, IN_BODY),
    'part of a chunk': ((CHUNKED[:-3],), True, IN_BODY),
    'no trailer section': ((CHUNKED + b'0\r\n',), True, IN_BODY),
    'no end of the stream': ((CLOSE_DELIMITED,), True, IN_BODY),
}


@SCHEMES
@on_loops_at_once
async def test_a_server_that_falls_silent_is_an_error(scheme):
    cases = dict(enumerate(SILENCES))
    ends = []

    async def script(peer):
        await peer.read_head()
        await peer.send(OK)
        number = int((await peer.read_head()).split()[1][1:])
        await peer.send(*SILENCES[cases[number]][0])
        ends.append(await peer.closed())

    async def check(request, number):
        _, is_started, text = SILENCES[cases[number]]
        with row(cases[number]):
            error = await failed(
                get(request, f'{server.url}{number}'), HttpDataError, TimeoutError,
                peer_prefix(server) + text)
            assert (error.reused, error.response_started) == (True, is_started)

    options = {'get_ssl_context': trusting, 'socket_timeout': 0.15}
    async with Server(script, context_of(scheme)) as server, pool(**options) as request:
        await asyncio.gather(*[get(request, server.url) for _ in cases])
        await asyncio.gather(*[check(request, number) for number in cases])
        await until(lambda: ends == [b''] * len(cases))


@SCHEMES
@on_loops_at_once
async def test_a_head_that_trickles_can_not_extend_its_time(scheme):
    ends = []

    async def script(peer):
        await peer.read_head()
        await peer.send(b'HTTP/1.1 200 OK\r\nx: ')
        try:
            while True:
                await peer.send(b'y')
                await asyncio.sleep(0.01)
        except RuntimeError:
            pass  # from uvloop, once the client has closed
        finally:
            ends.append(True)

    options = {'get_ssl_context': trusting, 'socket_timeout': 0.15}
    async with Server(script, context_of(scheme)) as server, pool(**options) as request:
        error = await failed(
            get(request, server.url), HttpDataError, TimeoutError, peer_prefix(server) + IN_HEAD)
        assert error.response_started
        await until(lambda: ends)


@on_loops_at_once
async def test_each_interim_response_gives_the_head_its_time_anew():
    async def script(peer):
        await peer.read_head()
        for _ in range(4):
            await asyncio.sleep(0.05)
            await peer.send(b'HTTP/1.1 102 Processing\r\n\r\n')
        await peer.send(OK)

    async with Server(script) as server, pool(socket_timeout=0.15) as request:
        assert (await get(request, server.url))[2] == b'ok'


@on_loops_at_once
async def test_an_interim_response_that_trickles_can_not_extend_the_time_of_sending():
    trickled = []
    with deaf_server() as server:
        async with pool(get_sock=small_sock, socket_timeout=0.1) as request:
            task = asyncio.create_task(request(
                b'PUT', server.url, headers=of_length(len(LARGE)), body=streamed(LARGE)))
            await turns(4)
            with server.accept() as accepted:
                accepted.send(b'HTTP/1.1 103 Early Hints\r\na: ')
                while not task.done() and len(trickled) < 200:
                    trickled.append(accepted.send(b'a'))
                    await asyncio.sleep(0.02)
                with pytest.raises(HttpDataError) as caught:
                    await task
    assert type(caught.value.__cause__) is TimeoutError
    assert caught.value.response_started
    assert len(trickled) < 200


@on_loops_at_once
async def test_each_read_of_a_body_has_its_own_time():
    async def script(peer):
        await peer.read_head()
        await peer.send(b'HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n')
        for _ in range(4):
            await asyncio.sleep(0.05)
            await peer.send(b'y')

    async with Server(script) as server, pool(socket_timeout=0.15) as request:
        assert (await get(request, server.url))[2] == b'yyyy'


@on_loops_at_once
async def test_the_time_in_which_nobody_reads_a_body_does_not_count():
    go_on = asyncio.Event()

    async def script(peer):
        await peer.read_head()
        await peer.send(OK[:-1])
        await go_on.wait()
        await peer.send(OK[-1:])
        await Answering(OK)(peer)

    async with Server(script) as server, pool(socket_timeout=0.1) as request:
        _, _, body = await request(b'GET', server.url)
        await asyncio.sleep(0.12)
        assert await anext(body) == b'o'
        await asyncio.sleep(0.12)
        go_on.set()
        assert await buffered(body) == b'k'
        assert (await get(request, server.url))[2] == b'ok'
        assert len(server.peers) == 1


@on_loops_at_once
async def test_the_time_of_the_callers_own_body_does_not_count():
    answering = Answering(OK)

    async def body():
        for _ in range(2):
            await asyncio.sleep(0.12)
            yield b'x'
        await asyncio.sleep(0.12)

    async with Server(answering) as server, pool(socket_timeout=0.1) as request:
        code, _, response = await request(
            b'PUT', server.url, headers=((b'content-length', b'2'),), body=body)
        assert (code, await buffered(response)) == (b'200', b'ok')
    assert answering.bodies == [b'xx']


UPLOAD = bytes(1_000_000) + b'the end'


def reading_slowly(sock):
    started = time.monotonic()
    data = b''
    while not data.endswith(b'the end'):
        if time.monotonic() - started < 0.25:
            time.sleep(0.01)
        data = data[-10:] + sock.recv(10_000)
    sock.sendall(OK)
    receive_end(sock)


@SCHEMES
@on_loops_at_once
async def test_each_progress_of_sending_has_its_own_time(scheme):
    """All of it takes longer than `socket_timeout`."""
    data = UPLOAD[-500_000:]
    with ThreadServer(reading_slowly, context_of(scheme)) as server:
        server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        options = {'get_ssl_context': trusting, 'socket_timeout': 0.15,
                   'get_sock': small_sending_sock}
        async with pool(**options) as request:
            _, _, body = await request(
                b'PUT', server.url, headers=((b'content-length', b'%d' % len(data)),),
                body=streamed(data))
            assert await buffered(body) == b'ok'


@SCHEMES
@on_loops_at_once
async def test_an_interim_response_that_trickles_in_is_no_progress_of_sending(scheme):
    is_over = threading.Event()

    def script(sock):
        with contextlib.suppress(OSError):
            for number in itertools.cycle(b'HTTP/1.1 103 Early Hints\r\n\r\n'):
                sock.sendall(bytes([number]))
                if is_over.wait(0.02):
                    return

    with ThreadServer(script, context_of(scheme)) as server:
        options = {'get_ssl_context': trusting, 'socket_timeout': 0.15,
                   'get_sock': small_sending_sock}
        server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        async with pool(**options) as request:
            await failed(
                request(b'PUT', server.url, headers=((b'content-length', b'%d' % len(UPLOAD)),),
                        body=streamed(UPLOAD)),
                HttpDataError, TimeoutError,
                f'{peer_prefix(server, "PUT")}, sending the request: {PASSED}')
            is_over.set()


@SCHEMES
@on_loops_at_once
async def test_a_server_that_does_not_read_is_an_error(scheme):
    is_over = threading.Event()

    def script(sock):
        is_over.wait(PATIENCE)
        ends.append(receive_end(sock))

    ends = []
    with ThreadServer(script, context_of(scheme)) as server:
        options = {'get_ssl_context': trusting, 'socket_timeout': 0.15,
                   'get_sock': small_sending_sock}
        server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        async with pool(**options) as request:
            error = await failed(
                request(b'PUT', server.url, headers=((b'content-length', b'%d' % len(UPLOAD)),),
                        body=streamed(UPLOAD)),
                HttpDataError, TimeoutError,
                f'{peer_prefix(server, "PUT")}, sending the request: {PASSED}')
            assert (error.reused, error.response_started) == (False, False)
            is_over.set()


# ---------------------------------------------------------------------------- cancellation

class Everything:
    """A script that uses what it can of an exchange, again and again: its client sends a body
    in two pieces and receives two interim responses and a body in three. A GET is simpler."""

    def __init__(self):
        self.ends = 0

    async def __call__(self, peer):
        try:
            while True:
                if (await peer.read_head()).startswith(b'GET'):
                    await peer.send(OK)
                    continue
                await peer.send(b'HTTP/1.1 102 Processing\r\n\r\n')
                assert await peer.read(4) == b'abcd'
                await peer.send(b'HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 20', b'0 OK\r\n',
                                b'transfer-encoding: chunked\r\n\r\n1\r\nx\r\n', b'1\r\ny',
                                b'\r\n1\r\nz\r\n0\r\n', b'\r\n')
        finally:
            self.ends += 1


async def two_pieces():
    yield b'ab'
    await asyncio.sleep(0)
    yield b'cd'


async def exchange_everything(request, url):
    code, _, body = await request(
        b'POST', url, headers=((b'content-length', b'4'),), body=two_pieces)
    return code, await buffered(body)


async def resolve_in_turns(host):
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return [ipaddress.IPv4Address('127.0.0.1')]


@pytest.mark.parametrize('is_reused', [False, True], ids=['fresh', 'reused'])
@SCHEMES
@on_loops
async def test_a_request_may_be_cancelled_at_any_turn_of_the_loop(scheme, is_reused):
    script = Everything()
    context = trusting()
    options = {'get_ssl_context': lambda: context, 'get_dns_resolver': resolving(resolve_in_turns)}
    async with Server(script, context_of(scheme)) as server:
        url = f'{scheme}://name.test:{server.port}/'
        for turn in itertools.count():
            async with pool(**options) as request:
                if is_reused:
                    await get(request, url)
                task = asyncio.create_task(exchange_everything(request, url))
                await turns(turn)
                task.cancel()
                [result] = await asyncio.gather(task, return_exceptions=True)
                is_over = not isinstance(result, asyncio.CancelledError)
                # Nothing is left of it that stands in the way of the next one.
                assert (await get(request, url))[2] == b'ok'
            await until(lambda: script.ends == len(server.peers))
            if is_over:
                assert result == (b'200', b'xyz')
                break
        assert turn > (8 if is_reused else 12)


@on_loops
async def test_a_request_may_be_closed_at_any_step():
    """As the interpreter does with what nobody awaits to its end."""
    script = Everything()
    async with Server(script) as server, pool() as request:
        for step in itertools.count():
            coroutine = exchange_everything(request, server.url)
            try:
                for _ in range(step):
                    waited_for = coroutine.send(None)
                    if waited_for is not None:
                        waited_for._asyncio_future_blocking = False
                        await waited_for
            except StopIteration as stop:
                assert stop.value == (b'200', b'xyz')
                break
            coroutine.close()
            assert (await get(request, server.url))[2] == b'ok'
        assert step > 5
    await until(lambda: script.ends == len(server.peers))


@on_loops
async def test_a_timeout_of_the_caller_ends_a_request():
    ends = []

    async def script(peer):
        await peer.read_head()
        ends.append(await peer.closed())

    async with Server(script) as server, pool() as request:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.03):
                await request(b'GET', server.url)
        assert asyncio.current_task().cancelling() == 0
        await until(lambda: ends == [b''])


@on_loops_at_once
async def test_a_timeout_of_the_caller_in_the_tick_of_socket_timeout_wins():
    loop = asyncio.get_running_loop()

    async def script(peer):
        await peer.read_head()
        await peer.send(OK)
        await peer.closed()

    async with Server(script) as server, pool(socket_timeout=0.1) as request:
        for seconds in (0.09, 0.11):
            # A connection that is there already, so that the request is sent in one turn.
            await get(request, server.url)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(seconds):
                    loop.call_soon(time.sleep, 0.12)
                    await request(b'GET', server.url)
            assert asyncio.current_task().cancelling() == 0


@on_loops
async def test_a_failure_in_a_task_group_cancels_the_other_requests():
    ends = []

    async def script(peer):
        path = (await peer.read_head()).split()[1]
        if path == b'/bad':
            await until(lambda: len(server.peers) == 3)
            await peer.send(b'bad\r\n\r\n')
        ends.append(await peer.closed())

    async with Server(script) as server, pool() as request:
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                for path in ('', '', 'bad'):
                    group.create_task(request(b'GET', server.url + path))
        assert [type(error) for error in caught.value.exceptions] == [HttpDataError]
        await until(lambda: ends == [b'', b'', b''])


# What has come for a task in the very tick in which it is cancelled.
COMING = {
    'data': (10, lambda sock: sock.sendall(OK)),
    'end': (10, lambda sock: sock.shutdown(socket.SHUT_WR)),
    'reset': (10, send_reset),
    'time': (0.1, lambda sock: time.sleep(0.11)),
}


@SCHEMES
@on_loops
async def test_a_cancellation_wins_over_what_comes_in_the_same_tick(scheme):
    """In http while the head is read, in https in the handshake."""
    loop = asyncio.get_running_loop()
    with socket.create_server(('127.0.0.1', 0)) as listener:
        url = f'{scheme}://127.0.0.1:{listener.getsockname()[1]}/'
        for case, (socket_timeout, come) in COMING.items():
            options = {'get_ssl_context': trusting, 'socket_timeout': socket_timeout}
            with row(case):
                async with pool(**options) as request:
                    task = asyncio.create_task(request(b'GET', url))
                    await turns(5)
                    sock, _ = listener.accept()
                    with sock:
                        assert sock.recv(65536)
                        loop.call_soon(task.cancel)
                        come(sock)
                        with pytest.raises(asyncio.CancelledError):
                            await task
                    assert task.cancelling() == 1


# --------------------------------------------------------------------------------- loops

def in_loop(loop_name, function, *args):
    with asyncio.Runner(loop_factory=LOOPS[loop_name]) as runner:
        return runner.run(function(*args))


@pytest.mark.parametrize('loop_name', LOOPS)
def test_a_pool_may_be_made_before_any_loop(loop_name):
    request, close = Pool()

    async def use():
        async with Server(Answering(OK)) as server:
            assert (await get(request, server.url))[2] == b'ok'
            await close()

    in_loop(loop_name, use)


@pytest.mark.parametrize('loop_name', LOOPS)
def test_a_pool_that_made_no_request_can_be_closed(loop_name):
    _, close = Pool()
    in_loop(loop_name, close)


@pytest.mark.parametrize('loop_name', LOOPS)
def test_a_pool_can_be_used_in_one_loop_only(loop_name):
    request, close = Pool()
    ends = []

    def script(sock):
        receive_head(sock)
        sock.sendall(OK)
        ends.append(receive_end(sock))

    async def use_again():
        for _ in range(2):
            await failed(
                request(b'GET', server.url), HttpConnectionError, RuntimeError,
                f'GET {server.origin}, refused: the pool is bound to the event loop of its first '
                'request and can not be used from another: make one Pool for each loop')

    async def close_and_wait():
        assert ends == []
        await close()
        await until(lambda: ends == [b''])

    with ThreadServer(script) as server:
        in_loop(loop_name, get, request, server.url)
        in_loop(loop_name, use_again)
        # Its idle connections can still be closed, though their loop is gone.
        in_loop(loop_name, close_and_wait)
        assert len(server.socks) == 1


@pytest.mark.parametrize('is_in_loop', [True, False])
@pytest.mark.parametrize('loop_name', LOOPS)
def test_a_pool_is_not_closed_from_elsewhere_while_its_loop_runs(loop_name, is_in_loop):
    message = ('closing the pool, refused: ' + (
        'the pool is bound to the event loop of its first request, which is running: close it '
        'there' if is_in_loop else 'no running event loop'))

    def close_elsewhere():
        if is_in_loop:
            in_loop(loop_name, failed, close(), HttpConnectionError, RuntimeError, message)
        else:
            with pytest.raises(HttpConnectionError, match=f'^{message}$'):
                close().send(None)

    async def use():
        async with Server(Answering(OK)) as server:
            await get(request, server.url)
            await asyncio.get_running_loop().run_in_executor(None, close_elsewhere)
            # It goes on as if nothing had been tried.
            await get(request, server.url)
            assert len(server.peers) == 1
            await close()

    request, close = Pool()
    in_loop(loop_name, use)


@pytest.mark.parametrize('loop_name', LOOPS)
def test_a_pool_is_closed_from_elsewhere_while_its_loop_does_not_run(loop_name):
    """The request that waits for a connection is told, as soon as it can be."""
    async def begin():
        await get(request, server.url)
        bodies.append((await request(b'GET', server.url + 'half'))[2])
        task = asyncio.create_task(failed(
            get(request, server.url), HttpConnectionError, RuntimeError,
            f'GET {server.origin}: {WAITING}RuntimeError: the pool was closed'))
        await turns(3)
        return task

    def script(sock):
        receive_head(sock)
        sock.sendall(OK)
        receive_head(sock)
        sock.sendall(OK[:-1])
        ends.append(receive_end(sock))

    bodies, ends = [], []
    request, close = Pool(max_connections=1)
    with (ThreadServer(script) as server,
          asyncio.Runner(loop_factory=LOOPS[loop_name]) as runner):
        task = runner.run(begin())
        in_loop(loop_name, close)

        async def end():
            await task
            await bodies.pop().aclose()

        runner.run(end())
    assert ends == [b'']


# Forks. The child shares the sockets of the parent, and the system's part of its event loop.

FORKING = """
import asyncio, contextlib, gc, os, ssl, sys, traceback
from lowhaio import HttpConnectionError, HttpError, Pool, buffered

loop_name, url, go_url, *ways = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE

async def get(request, url):
    return await buffered((await request(b'GET', url))[2])

async def begin():
    request, close = Pool(get_ssl_context=lambda: context)
    _, _, body = await request(b'GET', url + 'half')
    late = asyncio.create_task(get(request, url + 'late'))
    await asyncio.sleep(0.02)
    await get(request, url)
    kept = {'request': request, 'close': close, 'body': body, 'late': late}
    # Of another pool, a request that waits for a connection, and one that is dropped.
    request, close = Pool(get_ssl_context=lambda: context, max_connections=1)
    _, _, narrow_body = await request(b'GET', url + 'half')
    by_hand = request(b'GET', url)
    by_hand.send(None)
    kept |= {'narrow_close': close, 'narrow_body': narrow_body, 'by_hand': by_hand,
             'waiting': asyncio.create_task(get(request, url))}
    await asyncio.sleep(0.02)
    return kept

async def end(kept):
    # All of it goes on as if nothing had been.
    kept.pop('by_hand').close()
    request, close = Pool()
    assert await get(request, go_url) == b'ok'
    await close()
    for name in ('body', 'narrow_body'):
        assert await buffered(kept[name]) == b'ok', name
    assert await kept['late'] == await kept['waiting'] == b'ok'
    assert await get(kept['request'], url) == b'ok'
    await kept['close']()
    await kept['narrow_close']()
    print('whole')

def run(coroutine):
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    except HttpError as error:
        print(type(error).__name__, error, flush=True)
    else:
        raise AssertionError('it waits')

async def use_new_loop(kept):
    asyncio.get_running_loop().slow_callback_duration = 60
    await kept['close']()
    try:
        await kept['request'](b'GET', url)
    except HttpConnectionError as error:
        print(type(error).__name__, error, flush=True)
    # What is made here is not the parent's.
    request, close = Pool(get_ssl_context=lambda: context)
    await get(request, url)
    kept.clear()
    gc.collect()
    await get(request, url)
    await close()

def child(how, kept):
    if how == 'close':
        for name in 2 * ('close', 'narrow_close'):
            run(kept[name]())
    elif how == 'request':
        run(kept['request'](b'GET', url))
    elif how == 'read':
        # The second half of it has not come.
        assert run(kept['body'].__anext__()) == b'o'
        run(kept['body'].__anext__())
    elif how == 'aclose':
        run(kept['body'].aclose())
    elif how == 'body':
        del kept['body'], kept['narrow_body']
    elif how == 'new loop':
        asyncio.run(use_new_loop(kept))
    elif how == 'same loop':
        loop.run_until_complete(use_same_loop(kept))
    gc.collect()
    kept.clear()
    gc.collect()

async def use_same_loop(kept):
    run(kept['request'](b'GET', url))
    # The parent's sockets are readable meanwhile, and here nobody may know.
    request, close = Pool()
    assert await get(request, go_url) == b'ok'
    await close()
    with contextlib.suppress(HttpError):
        await kept['late']
    await asyncio.sleep(0.02)

def fork(kept):
    for how in ways:
        pid = os.fork()
        if not pid:
            try:
                child(how, kept)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0, how

async def main():
    kept = await begin()
    fork(kept)
    await end(kept)

if loop_name == 'uvloop':
    from uvloop import new_event_loop
else:
    from asyncio import new_event_loop
with contextlib.closing(new_event_loop()) as loop:
    loop.slow_callback_duration = 60
    if ways == ['same loop']:
        kept = loop.run_until_complete(begin())
        fork(kept)
        loop.run_until_complete(end(kept))
    else:
        loop.run_until_complete(main())
"""


class Parted:
    """A script whose responses to some paths wait, until all may go on."""

    def __init__(self):
        self.go_on = threading.Event()
        self.ends = []

    def __call__(self, sock):
        while True:
            try:
                path = receive_head(sock).split()[1]
            except (OSError, EOFError):
                # Of a new loop's own pool, or too early.
                self.ends.append(self.go_on.is_set())
                raise
            if path == b'/half':
                sock.sendall(OK[:-1])
            if path != b'/':
                sock.settimeout(0.01)
                while not self.go_on.wait(0.01):
                    with contextlib.suppress(TimeoutError):
                        assert sock.recv(1) == 'nothing', 'the client said something'
                sock.settimeout(PATIENCE)
            sock.sendall(OK[-1:] if path == b'/half' else OK)

    def go(self, sock):
        self.go_on.set()
        AnsweringInThreads()(sock)


def run_script(script, *args, **kwargs):
    return subprocess.run(
        [sys.executable, '-X', 'dev', '-W', 'error', '-c', script, *args], text=True,
        env={**os.environ, 'PYTHONPATH': str(HERE)}, timeout=PATIENCE, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kwargs)


FORKED = ('refused: the pool was used before this process was forked, and its connections are '
          'those of the parent: make one Pool for each process')


@pytest.mark.parametrize('ways', [
    ('close', 'drop', 'body', 'aclose', 'request', 'read', 'new loop'), ('same loop',)])
@pytest.mark.parametrize('loop_name', LOOPS)
@SCHEMES
def test_whatever_a_forked_child_does_with_a_pool_is_nothing_to_the_parent(
        scheme, loop_name, ways):
    script = Parted()
    with (ThreadServer(script, context_of(scheme)) as server, ThreadServer(script.go) as control):
        ended = run_script(FORKING, loop_name, server.url, control.url, *ways)
        refused = f'HttpConnectionError GET {server.origin}, {FORKED}'
        read = (f'HttpDataError {peer_prefix(server)}, reading the response body: '
                'ConnectionAbortedError: the connection was closed meanwhile')
        said = {'request': [refused], 'read': [read], 'new loop': [refused],
                'same loop': [refused]}
        assert ended.stdout.splitlines() == [
            *itertools.chain.from_iterable(said.get(way, []) for way in ways), 'whole']
        # Four of the parent, of which one was handed on, and one of the child's new loop.
        assert len(server.socks) == 4 + ('new loop' in ways)
    # None but that of the new loop came to its end too early.
    assert script.ends.count(False) == ('new loop' in ways)


class ProactorLike(asyncio.SelectorEventLoop):
    """A loop without `add_reader`, as that of Windows."""

    add_reader = asyncio.AbstractEventLoop.add_reader


def test_a_loop_without_add_reader_is_refused_with_an_error_that_says_so():
    async def use():
        request, close = Pool()
        for _ in range(2):
            await failed(
                request(b'GET', 'http://127.0.0.1/'), HttpConnectionError, RuntimeError,
                'GET http://127.0.0.1:80, refused: the event loop must have add_reader, as '
                "asyncio's selector loop and uvloop do: ProactorLike does not")
        await close()

    with asyncio.Runner(loop_factory=ProactorLike) as runner:
        runner.run(use())


@SCHEMES
@on_loops
async def test_a_response_that_is_being_read_can_be_closed_and_not_read_twice(scheme):
    ends = []

    async def script(peer):
        await peer.read_head()
        await peer.send(OK[:-2])
        ends.append(await peer.closed())

    async with (Server(script, context_of(scheme)) as server,
                pool(get_ssl_context=trusting) as request):
        for end in ('aclose', 'anext'):
            _, _, body = await request(b'GET', server.url)
            reading = asyncio.create_task(anext(body))
            await turns(3)
            if end == 'aclose':
                await body.aclose()
            else:
                await failed(
                    anext(body), HttpDataError, RuntimeError,
                    f'{peer_prefix(server)}, reading the response body: RuntimeError: the body is '
                    'being read by another task')
                await body.aclose()
            error = await failed(reading, HttpDataError, ConnectionAbortedError)
            assert str(error) == (
                f'{peer_prefix(server)}, reading the response body: {WAS_CLOSED}')
        await until(lambda: ends == [b'', b''])


@on_loops
async def test_a_body_can_be_closed_while_its_reader_lets_others_run():
    socks = []

    def get_sock(family):
        socks.append(socket.socket(family))
        socks[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_000_000)
        return socks[0]

    def script(sock):
        receive_head(sock)
        sock.sendall(b'HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n' % len(UPLOAD) + UPLOAD)

    async def read_all(body):
        while True:
            await anext(body)

    with ThreadServer(script) as server:
        async with pool(get_sock=get_sock, recv_bufsize=1000) as request:
            _, _, body = await request(b'GET', server.url)
            # So much has come that the reader does not have to wait for any of it.
            await until(lambda: has_arrived(socks[0], 300_000))
            reading = asyncio.create_task(read_all(body))
            await asyncio.sleep(0)
            await body.aclose()
            await failed(
                reading, HttpDataError, ConnectionAbortedError,
                f'{peer_prefix(server)}, reading the response body: {WAS_CLOSED}')


KEPT_IN_A_CHILD = """
import asyncio, os, ssl, sys
from lowhaio import Pool, buffered

context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE

async def main():
    request, close = Pool(get_ssl_context=lambda: context)
    assert await buffered((await request(b'GET', sys.argv[1]))[2]) == b'ok'
    pid = os.fork()
    if not pid:
        os.read(0, 1)  # lives for longer than the connection
        os._exit(0)
    await close()
    os.waitpid(pid, 0)

asyncio.run(main())
"""


@SCHEMES
def test_a_forked_child_does_not_keep_connections_open_that_the_parent_has_closed(scheme):
    def script(sock):
        receive_head(sock)
        sock.sendall(OK)
        receive_end(sock)
        is_closed.set()

    is_closed = threading.Event()
    with ThreadServer(script, context_of(scheme)) as server, subprocess.Popen(
            [sys.executable, '-c', KEPT_IN_A_CHILD, server.url],
            env={**os.environ, 'PYTHONPATH': str(HERE)}, stdin=subprocess.PIPE) as parent:
        assert is_closed.wait(PATIENCE)
        assert parent.poll() is None
        parent.stdin.close()
        assert parent.wait(PATIENCE) == 0


def test_a_child_that_goes_on_with_the_loop_is_told_nothing_of_the_parents_sockets():
    """In this process, so that what runs in a child is measured, too. In place of the parent, a
    copy of each descriptor keeps what the loop's selector knows of."""
    def get_sock(family):
        sock = default_of('get_sock')(family)
        copies.append(sock.dup())
        return sock

    async def begin():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        await get(request, server.url)
        return (await request(b'GET', server.url + 'half'))[2]

    async def go_on():
        script.go_on.set()
        await until(lambda: has_arrived(copies[0], 1))
        await turns(3)
        await failed(request(b'GET', server.url), HttpConnectionError, RuntimeError,
                     f'GET {server.origin}, {FORKED}')
        assert await anext(body) == b'o'
        await failed(anext(body), HttpDataError, ConnectionAbortedError)
        await close()

    script, copies, errors = Parted(), [], []
    request, close = Pool(get_sock=get_sock)
    with ThreadServer(script) as server, contextlib.closing(LOOPS['asyncio']()) as loop:
        body = loop.run_until_complete(begin())
        lowhaio.leave_to_parent()
        loop.run_until_complete(go_on())
        assert errors == []
        for sock in copies:
            sock.close()


def test_a_pool_without_a_connection_may_be_made_before_a_fork(plain_website):
    script = FORKING.partition('async def begin')[0] + """
made = Pool(), Pool()
pid = os.fork()

async def main():
    asyncio.get_running_loop().slow_callback_duration = 60
    request, close = made[pid == 0]
    assert await get(request, url)
    await close()
    if pid:
        assert os.waitpid(pid, 0)[1] == 0
        print('whole')

asyncio.run(main())
"""
    assert run_script(script, 'asyncio', plain_website, '').stdout == 'whole\n'


# A loop that was closed too early: whatever waited on it, and in whatever order it is dropped,
# nobody complains.


class TooEarly:
    """What requests may wait for when their loop is closed. Each gives a coroutine to be run for
    as far as it gets, or None."""

    def __init__(self, server, stack):
        self.server = server
        self.stack = stack
        self.held = []

    async def hold(self, request, path='half'):
        self.held.append((await request(b'GET', self.server.url + path))[2])
        return self.held[-1]

    async def a_body_unread(self):
        request, self.close = Pool()
        await self.hold(request)

    async def a_read(self, **options):
        request, self.close = Pool(**options)
        body = await self.hold(request)
        assert await anext(body) == b'o'
        return [anext(body)]

    async def a_read_over_tls(self):
        self.server = self.stack.enter_context(ThreadServer(self.server.script, server_context()))
        return await self.a_read(get_ssl_context=trusting)

    async def a_head(self):
        request, self.close = Pool()
        return [request(b'GET', self.server.url + 'none')]

    async def a_send(self):
        request, self.close = Pool(get_sock=small_sock)
        deaf = self.stack.enter_context(deaf_server())
        return [request(b'PUT', deaf.url, body=streamed(LARGE), headers=of_length(len(LARGE)))]

    async def a_chunk(self, headers=()):
        async def body():
            await forever()
            yield b''

        request, self.close = Pool()
        return [request(b'PUT', self.server.url + 'none', body=body,
                        headers=(*of_length(1), *headers))]

    async def a_100(self):
        return await self.a_chunk(EXPECT)

    async def a_connection(self):
        [sock] = bound_to('127.0.0.1')
        port = self.stack.enter_context(full_backlog(self.stack.enter_context(sock)))
        request, self.close = Pool()
        return [request(b'GET', f'http://127.0.0.1:{port}/')]

    async def a_handshake(self):
        request, self.close = Pool(get_ssl_context=trusting)
        return [request(b'GET', f'https://127.0.0.1:{self.server.port}/')]

    async def a_name(self):
        request, self.close = Pool(get_dns_resolver=resolving(lambda host: forever()))
        # The second one waits for the first.
        return [request(b'GET', f'http://a.test:{self.server.port}/') for _ in range(2)]

    async def get_connection(self):
        request, self.close = Pool(get_connection=lambda *_: forever())
        return [request(b'GET', self.server.url)]

    async def a_place(self, **options):
        request, self.close = Pool(max_connections=1, pool_timeout=60, **options)
        await self.hold(request)
        return [request(b'GET', self.server.url) for _ in range(3)]

    async def a_place_that_is_held_by_a_request(self):
        request, self.close = Pool(max_connections=1, pool_timeout=60)
        return [request(b'GET', self.server.url + 'none'),
                *[request(b'GET', self.server.url) for _ in range(3)]]

    def __call__(self, sock):
        while True:
            path = receive_head(sock).split()[1]
            sock.sendall(OK[:-1] if path == b'/half' else OK if path == b'/' else b'')


WAYS_TO_WAIT = [name for name in vars(TooEarly) if not name.startswith('_') and name != 'hold']


@pytest.mark.parametrize('in_order', ['dropped', 'closed first', 'held ones first'])
@pytest.mark.parametrize('is_task', [True, False])
@pytest.mark.parametrize('what', WAYS_TO_WAIT)
@pytest.mark.parametrize('loop_name', LOOPS)
def test_nobody_complains_of_a_loop_that_was_closed_too_early(
        monkeypatch, loop_name, what, is_task, in_order):
    def on_error(loop, context):
        # That the loop was closed too early is told by asyncio itself.
        if context['message'] != 'Task was destroyed but it is pending!':
            errors.append(context)

    async def begin():
        asyncio.get_running_loop().set_exception_handler(on_error)
        for coroutine in await getattr(early, what)() or ():
            if is_task:
                waiting.append(asyncio.create_task(as_coroutine(coroutine)))
            else:
                coroutine = as_coroutine(coroutine)
                coroutine.send(None)
                waiting.append(coroutine)
        await asyncio.sleep(0.01)

    async def as_coroutine(awaitable):
        return await awaitable

    errors, waiting = [], []
    monkeypatch.setattr(sys, 'unraisablehook', errors.append)
    with nothing_left() as others, contextlib.ExitStack() as stack:
        early = TooEarly(None, stack)
        early.server = stack.enter_context(ThreadServer(early.__call__))
        with contextlib.closing(LOOPS[loop_name]()) as loop:
            loop.run_until_complete(begin())
        close, early.close = early.close, None
        if in_order == 'closed first':
            in_loop(loop_name, close)
        if in_order == 'held ones first':
            early.held.clear()
        waiting.clear()
        gc.collect()
        early.held.clear()
        gc.collect()
        in_loop(loop_name, close)
        del loop, close
    assert errors == others == []


@pytest.mark.parametrize('loop_name', LOOPS)
def test_nobody_complains_of_a_connection_that_was_given_to_a_loop_that_was_closed(
        monkeypatch, loop_name):
    async def begin():
        request, close = Pool(max_connections=1)
        _, _, body = await request(b'GET', server.url)
        coroutines = [request(b'GET', server.url) for _ in range(2)]
        for coroutine in coroutines:
            coroutine.send(None)
        go_on.set()
        assert await buffered(body) == b'ok'
        return coroutines

    def script(sock):
        receive_head(sock)
        sock.sendall(OK[:-1])
        go_on.wait(PATIENCE)
        sock.sendall(OK[-1:])
        ends.append(receive_end(sock))

    errors, ends = [], []
    go_on = threading.Event()
    monkeypatch.setattr(sys, 'unraisablehook', errors.append)
    with nothing_left(), ThreadServer(script) as server:
        with contextlib.closing(LOOPS[loop_name]()) as loop:
            coroutines = loop.run_until_complete(begin())
        while coroutines:
            del coroutines[0]
            gc.collect()
    assert (errors, ends) == ([], [b''])


# A response body that is dropped closes its connection, wherever the garbage is collected.

async def unfinished_body(server, request):
    _, _, body = await request(b'GET', server.url)
    return body


def server_of_unfinished_bodies(ends):
    def script(sock):
        receive_head(sock)
        sock.sendall(OK[:-1])
        ends.append(receive_end(sock))

    return ThreadServer(script)


@pytest.mark.parametrize('loop_name', LOOPS)
def test_a_body_dropped_after_its_loop_closed_closes_its_connection(loop_name):
    ends = []
    request, _ = Pool()
    with server_of_unfinished_bodies(ends) as server:
        before = open_descriptors()
        body = in_loop(loop_name, unfinished_body, server, request)
        del body
        gc.collect()
        # The server's end may be closed by now, or not.
        assert len(open_descriptors() - before) <= 1
    assert ends == [b'']


@pytest.mark.parametrize('loop_name', LOOPS)
def test_a_body_dropped_while_its_loop_does_not_run_closes_its_connection(loop_name):
    ends = []
    request, close = Pool()
    with (server_of_unfinished_bodies(ends) as server,
          asyncio.Runner(loop_factory=LOOPS[loop_name]) as runner):
        bodies = [runner.run(unfinished_body(server, request))]
        thread = threading.Thread(target=bodies.clear)
        thread.start()
        thread.join()

        async def wait():
            await until(lambda: ends == [b''])
            await close()

        runner.run(wait())


@on_loops
async def test_a_body_dropped_in_another_thread_closes_its_connection():
    ends = []
    with server_of_unfinished_bodies(ends) as server:
        async with pool() as request:
            bodies = [await unfinished_body(server, request)]
            thread = threading.Thread(target=bodies.clear)
            thread.start()
            thread.join()
            await until(lambda: ends == [b''])


@on_loops
async def test_a_body_dropped_in_another_loop_closes_its_connection():
    ends = []

    async def drop():
        bodies.clear()

    with server_of_unfinished_bodies(ends) as server:
        async with pool() as request:
            bodies = [await unfinished_body(server, request)]
            thread = threading.Thread(target=asyncio.run, args=(drop(),))
            thread.start()
            thread.join()
            await until(lambda: ends == [b''])


@SCHEMES
@on_loops
async def test_a_body_that_is_not_read_uses_no_cpu(scheme):
    def script(sock):
        receive_head(sock)
        sock.sendall(b'HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n' % len(UPLOAD))
        sock.sendall(UPLOAD)

    with ThreadServer(script, context_of(scheme)) as server:
        async with pool(get_ssl_context=trusting) as request:
            _, _, body = await request(b'GET', server.url)
            await asyncio.sleep(0.02)
            cpu = time.process_time()
            await asyncio.sleep(0.1)
            assert time.process_time() - cpu < 0.05
            assert await buffered(body) == UPLOAD


@on_loops
async def test_what_comes_while_a_request_is_sent_uses_no_cpu():
    go_on = asyncio.Event()

    async def script(peer):
        await peer.read_head()
        await peer.send(OK)  # early
        await peer.read(2)
        await Answering(OK)(peer)

    async def body():
        yield b'a'
        await go_on.wait()
        yield b'b'

    async with Server(script) as server, pool() as request:
        task = asyncio.create_task(
            request(b'PUT', server.url, headers=((b'content-length', b'2'),), body=body))
        await asyncio.sleep(0.02)
        cpu = time.process_time()
        await asyncio.sleep(0.1)
        assert time.process_time() - cpu < 0.05
        go_on.set()
        _, _, response = await task
        assert await buffered(response) == b'ok'


@SCHEMES
@on_loops
async def test_other_tasks_run_while_much_is_sent_and_received(scheme):
    """Each of them, again and again: the kernel always has more, and takes more."""
    def script(sock):
        while True:
            receive_head(sock)
            sock.sendall(b'HTTP/1.1 200 OK\r\ncontent-length: 20000000\r\n\r\n')
            sock.sendall(bytes(20_000_000))

    turns_taken = 0

    async def turn():
        nonlocal turns_taken
        while True:
            await asyncio.sleep(0)
            turns_taken += 1

    with ThreadServer(script, context_of(scheme)) as server:
        async with pool(get_ssl_context=trusting) as request:
            _, _, body = await request(b'GET', server.url)
            task = asyncio.create_task(turn())
            length = 0
            async for chunk in body:
                length += len(chunk)
            assert length == 20_000_000
            assert turns_taken > 12
            task.cancel()


# ------------------------------------------------------------------------------- no tasks

async def without_tasks(exchange, *args):
    """Run it on a loop that has one task, and return what else was made on the loop."""
    loop = asyncio.get_running_loop()
    made = []

    def factory(loop, coroutine, **kwargs):
        made.append(coroutine)
        return asyncio.Task(coroutine, loop=loop, **kwargs)

    loop.set_task_factory(factory)
    try:
        await exchange(*args)
        gc.collect()
        await turns(5)
    finally:
        loop.set_task_factory(None)
    return made


def answer_by_path(sock):
    while True:
        path = receive_head(sock).split()[1]
        if path == b'/upload':
            sock.recv(2)
        if path == b'/silent':
            receive_end(sock)
        sock.sendall({b'/chunked': CHUNKED + b'0\r\n\r\n', b'/part': OK[:-1],
                      b'/bad': b'bad\r\n\r\n'}.get(path, OK))


async def exchanges_of_all_kinds(server):
    async def late_body():
        await asyncio.sleep(0.001)
        yield b'o'
        await asyncio.sleep(0.001)
        yield b'k'

    options = {'get_ssl_context': trusting, 'socket_timeout': 0.5, 'keep_alive_timeout': 0.03}
    async with pool(**options) as request:
        for path in ('', 'chunked'):
            await get(request, server.url + path)
        _, _, body = await request(
            b'PUT', server.url + 'upload', headers=((b'content-length', b'2'),), body=late_body)
        await buffered(body)
        for path in ('silent', 'bad'):
            with pytest.raises(HttpDataError):
                await get(request, server.url + path)
        _, _, body = await request(b'GET', server.url + 'part')
        await body.aclose()
        _, _, body = await request(b'GET', server.url + 'part')
        del body
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await get(request, server.url + 'silent')
        await get(request, server.url)
        await asyncio.sleep(0.04)  # idle until it expires


@SCHEMES
@on_loops
async def test_no_task_is_made(scheme):
    with ThreadServer(answer_by_path, context_of(scheme)) as server:
        assert await without_tasks(exchanges_of_all_kinds, server) == []


@on_loops
async def test_no_task_is_made_for_a_lookup(nameserver, silent_address):
    async def exchange(port):
        options = {'get_dns_resolver': asking((0.01, silent_address), (5, nameserver.address))}
        async with pool(**options) as request:
            await get(request, f'http://name.test:{port}/')

    with ThreadServer(AnsweringInThreads()) as server:
        made = await without_tasks(exchange, server.port)
    assert made == []


# ------------------------------------------------------------------- several addresses
#
# Hosts with several addresses, some of which refuse or are silent, and resolvers that answer
# for them. What is slow on purpose runs beside other rows of its table.


def bound_to_each(*addresses):
    """As `bound_to`, but IPv6 addresses may be among them."""
    while True:
        with contextlib.ExitStack() as stack:
            port = 0
            socks = []
            try:
                for address in addresses:
                    family = socket.AF_INET6 if ':' in address else socket.AF_INET
                    socks.append(stack.enter_context(socket.socket(family)))
                    socks[-1].bind((address, port))
                    port = socks[-1].getsockname()[1]
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    pytest.skip('this machine has no IPv6')
                continue  # somebody has that port at another of the addresses
            stack.pop_all()
            return socks


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
    """A `get_sock` that keeps what it made, and when."""

    def __init__(self):
        self.socks = []
        self.times = []

    def __call__(self, family):
        self.times.append(time.monotonic())
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
        options = {'get_dns_resolver': asking((5, nameserver.address)), 'keep_alive_timeout': 0}
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

# What the addresses do, the least seconds that it takes. Where those that refuse were waited
# for, it would take ten.
RACES = {
    'a silent one is first': (('silent', 'serving'), 0.25),
    'three silent ones are first': (('silent', 'silent', 'silent', 'serving'), 0.75),
    'many that refuse are first': (('refusing',) * 40 + ('serving',), 0),
    'many that refuse after a silent one': (('silent', *('refusing',) * 40, 'serving'), 0.25),
    'silent and refusing ones by turns': (
        ('silent', 'refusing', 'silent', 'refusing', 'serving'), 0.5),
}


@on_loops_at_once
async def test_the_next_address_is_tried_after_a_quarter_second_or_when_one_has_failed():
    async def race(kinds, seconds):
        opened = Opened()
        async with Hosts(*kinds) as hosts:
            records = Records(hosts.ipv4)
            async with pool(get_dns_resolver=records, get_sock=opened) as request:
                started = time.monotonic()
                code, _, body = await request(b'GET', hosts.url)
                # The losers have been closed by now.
                assert opened.still_open() == [len(kinds) - 1]
                assert seconds - 0.02 <= time.monotonic() - started < 5
                assert (code, await buffered(body)) == (b'200', b'ok')
            assert hosts.used == hosts.ipv4[-1:]
            assert records.asked == ['A']
        for kind, before, after in zip(kinds, opened.times, opened.times[1:], strict=False):
            assert kind == 'refusing' or after - before >= 0.23

    await rows(race, RACES)


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

# What the IPv4 addresses do, the A records if not these, what the IPv6 address does, which is
# used, and which records were asked for.
FAMILIES = {
    'an IPv4 address accepts': (('serving',), None, 'serving', '127.0.0.1', ['A']),
    'the last IPv4 address accepts': (
        ('refusing', 'silent', 'serving'), None, 'serving', '127.0.0.3', ['A']),
    'the IPv4 address refuses': (('refusing',), None, 'serving', '::1', ['A', 'AAAA']),
    'all IPv4 addresses refuse': (
        ('refusing', 'refusing', 'refusing'), None, 'serving', '::1', ['A', 'AAAA']),
    'the IPv4 address is silent': (('silent',), None, 'serving', '::1', ['A', 'AAAA']),
    'all IPv4 addresses are silent': (
        ('silent', 'silent'), None, 'serving', '::1', ['A', 'AAAA']),
    'an IPv4 address is silent, one refuses': (
        ('silent', 'refusing'), None, 'serving', '::1', ['A', 'AAAA']),
    'an IPv4 network can not be reached': (
        (), ['224.0.0.1'], 'serving', '::1', ['A', 'AAAA']),
    'there is no A record': (
        (), raising(aiodnsresolver.DnsNoMatchingAnswers), 'serving', '::1', ['A', 'AAAA']),
    'the name has no records but AAAA': (
        (), raising(aiodnsresolver.DnsRecordDoesNotExist), 'serving', '::1', ['A', 'AAAA']),
    'the A records are none': ((), [], 'serving', '::1', ['A', 'AAAA']),
}


@on_loops_at_once
async def test_aaaa_records_are_asked_for_when_no_ipv4_address_has_connected_by_its_turn():
    async def connect(kinds, ipv4, ipv6, address, asked):
        opened = Opened()
        async with Hosts(*kinds, ipv6=ipv6) as hosts:
            records = Records(hosts.ipv4 if ipv4 is None else ipv4, ['::1'])
            async with pool(get_dns_resolver=records, get_sock=opened) as request:
                started = time.monotonic()
                await request(b'GET', hosts.url)
                assert time.monotonic() - started < 5
                assert opened.still_open() == [len(opened.socks) - 1]
            assert hosts.used == [address]
            assert records.asked == asked

    await rows(connect, FAMILIES)


@on_loops
async def test_aaaa_records_are_asked_for_at_once_when_the_a_records_are_of_no_use():
    """Where they were waited for, it would take ten seconds."""
    async def connect_often(kinds, ipv4):
        async with Hosts(*kinds, ipv6='serving') as hosts:
            records = Records(hosts.ipv4 if ipv4 is None else ipv4, ['::1'])
            options = {'get_dns_resolver': records, 'keep_alive_timeout': 0}
            async with pool(**options) as request:
                started = time.monotonic()
                for _ in range(40):
                    assert (await get(request, hosts.url))[2] == b'ok'
                assert time.monotonic() - started < 5
            assert records.asked == ['A', 'AAAA'] * 40

    await rows(connect_often, {
        'the IPv4 addresses refuse': (('refusing', 'refusing'), None),
        'there is no A record': ((), no_address),
    })


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
        records = Records(hosts.ipv4, ipv6, seconds=-1)
        async with pool(get_dns_resolver=records, socket_timeout=2) as request:
            await get(request, hosts.url)
            await hosts.serve('127.0.0.1')
            await get(request, hosts.url)
    assert hosts.used == ['::1', '127.0.0.1']
    assert pending.ended == 1


@on_loops_at_once
async def test_an_answer_in_the_tick_in_which_an_attempt_succeeds_is_not_needed():
    opened, pending = Opened(), Pending()
    async with Hosts('silent', ipv6='serving') as hosts:
        async with pool(get_dns_resolver=Records(hosts.ipv4, pending),
                        get_sock=opened) as request:
            task = asyncio.create_task(request(b'GET', hosts.url))
            await until(lambda: pending.waiters)
            await hosts.serve('127.0.0.1')
            await connected(opened.socks[0])
            pending.waiters[0].set_result(['::1'])
            await task
            assert (pending.ended, task.cancelling(), opened.still_open()) == (1, 0, [0])
        assert hosts.used == ['127.0.0.1']


# Errors that come at once

@on_loops_at_once
async def test_an_address_that_fails_at_once_is_followed_by_the_next_without_delay():
    """Forty of them: where each was waited for, it would take ten seconds."""
    async def connect_often(ipv4, ipv6, refused_family, used):
        def get_sock(family):
            if family == refused_family:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return socket.socket(family)

        async with Hosts('refusing', 'serving', ipv6='serving') as hosts:
            options = {'get_dns_resolver': Records(ipv4, ipv6), 'get_sock': get_sock}
            async with pool(**options, keep_alive_timeout=0) as request:
                started = time.monotonic()
                for _ in range(40):
                    assert (await get(request, hosts.url))[2] == b'ok'
                assert time.monotonic() - started < 5
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


# A nameserver's time-out is at 0.1 seconds. The loop, blocked for 0.2, finds both due.
IN_THE_TICK = list(itertools.product((1, 2), (0.001, 0.15), (False, True)))


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
                get_dns_resolver=asking(*[(0.1, nameserver.address)] * count), get_sock=opened))
            task = asyncio.create_task(request_in(limit, request, f'http://{name}:{hosts.port}/'))
            started.append((task, limit, opened))
        await until(lambda: nameserver.ipv6_queries.total() >= len(started))
        for (_, seconds, by_timeout), (task, limit, _) in zip(IN_THE_TICK, started, strict=True):
            if by_timeout:
                limit.reschedule(loop.time() + seconds)
            else:
                loop.call_later(seconds, task.cancel)
        time.sleep(0.2)
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
                # Only a loop that was quick enough had a response by the last turn.
                assert task in cancelled or number == 4
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
        {'127.0.0.1': REFUSED, 'AAAA records': 'DnsResponseCode: 2'},
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
        ('refusing',), None, 0.4, {'127.0.0.1': REFUSED, 'AAAA records': late(0.4)},
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


@on_loops_at_once
async def test_socket_timeout_is_for_the_lookup_connecting_and_tls_together():
    """What is left of it decreases: the least that a clock of its own would take is 2.2."""
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
                started = time.monotonic()
                await failed(
                    request(b'GET', f'https://name.test:{hosts.port}/'), kind, TimeoutError,
                    message.format(f'GET https://name.test:{hosts.port}', port=hosts.port)
                    + late(1.5))
                assert 1.4 < time.monotonic() - started < 2.1
                assert opened.still_open() == []

    await rows(connect, {
        'slow records, a silent address, a silent handshake': (
            resolve, no_address, HttpTlsError,
            '{} (peer 127.0.0.2:{port}): the TLS handshake failed: '),
        'slow AAAA records, a silent handshake': (
            [], resolve_ipv6, HttpTlsError, '{} (peer [::1]:{port}): the TLS handshake failed: '),
        'AAAA records that are slow after a silent address': (
            ['127.0.0.1'], resolve_ipv6, HttpTlsError,
            '{} (peer [::1]:{port}): the TLS handshake failed: '),
    })


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
        async with pool(get_dns_resolver=records) as request:
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
        async with pool(get_dns_resolver=records) as request:
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
                    for asked in (2, 3, 4):
                        cancelled.append(tasks.pop(0))
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
        async with pool(get_dns_resolver=records, keep_alive_timeout=0) as request:
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
    'empty.test': (aiodnsresolver.DnsNoMatchingAnswers, 'DnsNoMatchingAnswers'),
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
                     'DnsRecordDoesNotExist', 1, 1),
    'no records of either kind': ([], [], aiodnsresolver.DnsNoMatchingAnswers,
                                  'DnsNoMatchingAnswers', 1, 1),
    'no A, AAAA fails': ([], 'SERVFAIL', aiodnsresolver.DnsResponseCode,
                         'DnsResponseCode: 2', 1, 1),
    'no A, AAAA is silent': (
        [], None, TimeoutError,
        'TimeoutError: no nameserver answered in the time that the resolver gives', 1, 1),
    'A fails': ('SERVFAIL', ['::1'], aiodnsresolver.DnsResponseCode, 'DnsResponseCode: 2', 1, 0),
    'A is silent': (
        None, ['::1'], TimeoutError,
        'TimeoutError: no nameserver answered in the time that the resolver gives', 1, 0),
}


@on_loops
async def test_a_name_without_an_address_of_either_family_is_an_error(nameserver):
    async def ask(name, ipv4, ipv6, cause, text, queries, ipv6_queries):
        nameserver.answers[name] = ipv4
        nameserver.ipv6_answers[name] = ipv6
        async with pool(get_dns_resolver=asking((0.2, nameserver.address))) as request:
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


# --------------------------------------------------------------------------------- limits
#
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


class Socks:
    """A `get_sock` that must never have more open sockets than allowed."""

    def __init__(self, limit):
        self.limit = limit
        self.socks = []
        self.most = 0

    def __call__(self, family):
        sock = socket.socket(family)
        self.socks.append(sock)
        self.most = max(self.most, self.open())
        assert self.most <= self.limit
        return sock

    def open(self):
        return sum(sock.fileno() >= 0 for sock in self.socks)


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
                    for letter in itertools.islice(itertools.cycle('abcde'[:origins]), 100)])
            assert [body for _, _, body in answers] == [b'ok'] * 100
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


@contextlib.contextmanager
def no_descriptor_left():
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


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


WAITING = 'waiting for a connection failed: '


@pytest.mark.parametrize('seconds', [0, 0.05])
@pytest.mark.parametrize('limit', ['max_connections', 'max_connections_per_origin'])
@on_loops_at_once
async def test_waiting_ends_after_pool_timeout(limit, seconds):
    script = Halves()
    async with (Server(script) as server,
                pool(**{limit: 1, 'pool_timeout': seconds}) as request):
        async with holding_the_only_place(request, server):
            begun = time.monotonic()
            errors = await asyncio.gather(*[
                failed(request(b'POST', server.url + 'path?query'), HttpConnectionError,
                       TimeoutError, f'POST {server.origin}: {WAITING}TimeoutError: pool_timeout, '
                       f'{seconds:g} seconds, passed')
                for _ in range(2)])
            assert seconds * 0.8 <= time.monotonic() - begun < 5
            for error in errors:
                assert (error.reused, error.response_started) == (False, False)
                assert error.phase == 'pool'
            assert script.connections == [0]
        assert (await get(request, server.url))[2] == b'ok'
        # Nor does one wait for an idle connection.
        assert (await get(request, server.url))[2] == b'ok'
    assert script.connections == [0, 1, 1]


@on_loops_at_once
async def test_waiting_is_no_part_of_socket_timeout():
    script = Halves()
    options = {'max_connections': 1, 'socket_timeout': 0.1}
    async with Server(script) as server, pool(**options) as request:
        async with holding_the_only_place(request, server):
            task = asyncio.create_task(get(request, server.url))
            await asyncio.sleep(0.2)
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
    """Within this turn of the loop."""
    await bodies.pop().aclose()


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
@on_loops_at_once
async def test_what_is_freed_in_the_tick_of_pool_timeout_is_not_lost(is_late_first, others):
    seconds = 0.1

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
                await asyncio.sleep(0.01)
            first = asyncio.create_task(get(request, server.url))
            await asyncio.sleep(0.01)
            if is_late_first:
                loop.call_later(seconds, free)
                await asyncio.sleep(0.01)
            tasks = [asyncio.create_task(get(request, server.url)) for _ in range(others)]
            await turns(2)
            assert bodies
            time.sleep(seconds)
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
        lambda peer: peer.read_head(), {'socket_timeout': 0.05}, HttpDataError, False),
}


@pytest.mark.parametrize('limit', ['max_connections', 'max_connections_per_origin'])
@on_loops
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


# ------------------------------------------------------------------- TLS: sessions resumed

class Resuming:
    """A script that answers, and keeps of each connection whether its TLS session was resumed.
    It answers no sooner than a number of connections have come."""

    def __init__(self, together=1):
        self.together = together
        self.resumed = []

    async def __call__(self, peer):
        self.resumed.append(peer.writer.get_extra_info('ssl_object').session_reused)
        await until(lambda: len(self.resumed) >= self.together)
        await Answering(OK)(peer)


class ResumingInThreads:
    """As `Resuming`. The first responses may be others."""

    def __init__(self, *first):
        self.first = list(first)
        self.resumed = []

    def __call__(self, sock):
        self.resumed.append(sock.session_reused)
        receive_head(sock)
        sock.sendall(self.first.pop(0) if self.first else OK)
        receive_end(sock)


def own_context(version=None, names=('127.0.0.1', 'a.test', 'b.test')):
    """With ticket keys of its own."""
    return certified(*names, version=version)


RESUMING = {'get_ssl_context': trusting, 'keep_alive_timeout': 0}


@TLS_VERSIONS
@on_loops
async def test_the_tls_session_of_an_origin_is_resumed(version):
    script = Resuming()
    async with Server(script, own_context(version)) as server, pool(**RESUMING) as request:
        for _ in range(3):
            assert (await get(request, server.url))[2] == b'ok'
        assert script.resumed == [False, True, True]
        # By several connections that are made at the same time, too.
        script.together = 6
        await asyncio.gather(*[get(request, server.url) for _ in range(3)])
    assert script.resumed == [False] + [True] * 5


@TLS_VERSIONS
@on_loops
async def test_there_is_no_session_to_resume_before_the_first_response(version):
    script = Resuming(together=3)
    async with Server(script, own_context(version)) as server, pool(**RESUMING) as request:
        await asyncio.gather(*[get(request, server.url) for _ in range(3)])
        assert script.resumed == [False] * 3
        await get(request, server.url)
    assert script.resumed == [False] * 3 + [True]


@TLS_VERSIONS
@on_loops
async def test_the_session_of_a_connection_without_a_response_is_not_resumed(version):
    script = ResumingInThreads(b'HTTP/2 200\r\n\r\n')
    with ThreadServer(script, own_context(version)) as server:
        async with pool(**RESUMING) as request:
            await failed(get(request, server.url), HttpDataError, ValueError)
            for _ in range(2):
                assert (await get(request, server.url))[2] == b'ok'
    assert script.resumed == [False, False, True]


@TLS_VERSIONS
@on_loops
async def test_a_session_is_never_that_of_another_origin_or_pool(version):
    context = own_context(version)
    options = {**RESUMING, 'get_dns_resolver': always('127.0.0.1')}
    script = Resuming()
    async with Server(script, context) as one, Server(script, context) as other:
        urls = [f'https://{host}:{server.port}/'
                for server in (one, other) for host in ('127.0.0.1', 'a.test', 'b.test')]
        for _ in range(2):
            async with pool(**options) as request:
                for is_resumed in (False, True):
                    for url in urls:
                        await get(request, url)
                        assert script.resumed.pop() == is_resumed
    assert script.resumed == []


@TLS_VERSIONS
@on_loops
async def test_a_session_that_the_server_does_not_know_is_followed_by_a_new_one(version):
    script = ResumingInThreads()
    with ThreadServer(script, own_context(version)) as server:
        async with pool(**RESUMING) as request:
            for number in range(6):
                if number == 2:
                    server.context = own_context(version)
                assert (await get(request, server.url))[2] == b'ok'
    assert script.resumed == [False, True, False, True, True, True]


class Sessions:
    """Keeps the sessions that clients' sockets of its context read and offer, in their order."""

    def __init__(self):
        class Counting(ssl.SSLSocket):
            @property
            def session(self):
                read.append(super().session)
                return read[-1]

            @session.setter
            def session(self, session):
                offered.append(session)
                ssl.SSLSocket.session.fset(self, session)

        self.read = read = []
        self.offered = offered = []
        # A context of its own: that of the other tests would keep the class.
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority().configure_trust(self.context)
        self.context.sslsocket_class = Counting

    async def connect(self, server, script, number, forgets=()):
        """The connections of those requests that resumed a session. Before some of them the
        server forgets the keys of its tickets."""
        async with pool(keep_alive_timeout=0, get_ssl_context=lambda: self.context) as request:
            for index in range(number):
                if index in forgets:
                    server.context = own_context(self.context.minimum_version)
                assert (await get(request, server.url))[2] == b'ok'
        return [index for index, is_resumed in enumerate(script.resumed) if is_resumed]


@pytest.mark.parametrize('is_lost, forgets, reads, resumed', [
    (True, (), [0], range(1, 8)),
    (True, range(8), [0, 1, 3, 7], ()),
    (True, (1,), [0, 1], range(2, 8)),
    (True, (2, 5), [0, 2, 6], (1, 3, 4, 7)),
    (True, (2, 3), [0, 2, 4], (1, 5, 6, 7)),
    (False, (), range(8), range(1, 8)),
    (False, range(8), range(8), ()),
    (False, (1,), range(8), range(2, 8)),
    (False, (2, 5), range(8), (1, 3, 4, 6, 7)),
    (False, (2, 3), range(8), (1, 4, 5, 6, 7)),
])
@TLS_VERSIONS
@on_loops
async def test_a_session_is_read_again_after_it_was_refused(
        version, monkeypatch, is_lost, forgets, reads, resumed):
    """From each connection, or less and less often where CPython loses memory each time."""
    monkeypatch.setattr(lowhaio, 'SESSIONS_ARE_LOST', is_lost)
    script = ResumingInThreads()
    sessions = Sessions()
    sessions.context.minimum_version = version
    with ThreadServer(script, own_context(version)) as server:
        assert await sessions.connect(server, script, 8, forgets) == list(resumed)
    assert len(sessions.read) == len(reads)


@TLS_VERSIONS
@on_loops
async def test_where_no_memory_is_lost_a_session_is_that_of_the_last_connection(
        version, monkeypatch):
    """A ticket may be good for once."""
    monkeypatch.setattr(lowhaio, 'SESSIONS_ARE_LOST', False)
    script = ResumingInThreads()
    sessions = Sessions()
    with ThreadServer(script, own_context(version)) as server:
        assert await sessions.connect(server, script, 5) == [1, 2, 3, 4]
    assert len(sessions.read) == 5
    for offered, read in zip(sessions.offered, sessions.read[:-1], strict=True):
        assert offered is read


@TLS_VERSIONS
@on_one_loop
async def test_a_session_that_was_of_much_use_is_followed_by_the_next_at_once(
        version, monkeypatch):
    monkeypatch.setattr(lowhaio, 'SESSIONS_ARE_LOST', True)
    script = ResumingInThreads()
    sessions = Sessions()
    sessions.context.minimum_version = version
    # The first ones were not.
    forgets = (1, 2, *range(21, 100, 17))
    with ThreadServer(script, own_context(version)) as server:
        resumed = await sessions.connect(server, script, 100, forgets)
    assert sorted({*range(100)} - {*resumed}) == [0, 1, 2, 3, *range(21, 100, 17)]
    assert len(sessions.read) == 3 + len(range(21, 100, 17))


@TLS_VERSIONS
@on_one_loop
async def test_a_server_that_never_resumes_costs_few_sessions(version, monkeypatch):
    monkeypatch.setattr(lowhaio, 'SESSIONS_ARE_LOST', True)
    monkeypatch.setattr(lowhaio, 'MAX_SESSION_PAUSE', 31)
    script = ResumingInThreads()
    sessions = Sessions()
    sessions.context.minimum_version = version
    with ThreadServer(script, own_context(version)) as server:
        assert await sessions.connect(server, script, 130, range(130)) == []
    # Of the connections 0, 1, 3, 7, 15, 31, 63, and then of each 32nd.
    assert len(sessions.read) == 9


@pytest.mark.parametrize('is_lost', [True, False])
@pytest.mark.parametrize('version, options, is_resumed', [
    (TLS_1_2, {'options': ssl.OP_NO_TICKET}, True),
    (TLS_1_3, {'options': ssl.OP_NO_TICKET}, True),
    (TLS_1_3, {'num_tickets': 0}, False),
    (TLS_1_3, {'num_tickets': 1}, True),
    (TLS_1_3, {'num_tickets': 7}, True),
])
@on_loops
async def test_a_session_is_resumed_whatever_tickets_the_server_sends(
        version, options, is_resumed, is_lost, monkeypatch):
    monkeypatch.setattr(lowhaio, 'SESSIONS_ARE_LOST', is_lost)
    # It ends TLS as it should, or OpenSSL would forget sessions that are not in tickets.
    script = Resuming()
    context = own_context(version)
    for name, value in options.items():
        setattr(context, name, value)
    async with Server(script, context) as server:
        assert await Sessions().connect(server, script, 4) == ([1, 2, 3] if is_resumed else [])


def test_a_session_is_read_from_each_connection_if_this_python_loses_no_memory():
    """Some 6 KB each time."""
    incoming, outgoing = (ssl.MemoryBIO(), ssl.MemoryBIO()), (ssl.MemoryBIO(), ssl.MemoryBIO())
    ends = [own_context(TLS_1_2).wrap_bio(*incoming, server_side=True),
            trusting().wrap_bio(*outgoing, server_hostname='127.0.0.1')]
    for _ in range(3):
        for end, (_, sent), (received, _) in zip(
                ends, (incoming, outgoing), (outgoing, incoming), strict=True):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
            received.write(sent.read())
    assert ends[1].session is not None

    # What is in memory now: the most that has ever been there may be that of another test.
    statm = pathlib.Path('/proc/self/statm')
    if not statm.exists():
        pytest.skip('this system does not tell how much memory a process has')

    def pages():
        return int(statm.read_text().split()[1])

    def growth(number):
        before = pages()
        for _ in range(number):
            ends[1].session  # noqa: B018
        return (pages() - before) * resource.getpagesize()

    growth(2000)
    assert (growth(10_000) > 10_000_000) == lowhaio.SESSIONS_ARE_LOST


@TLS_VERSIONS
@on_loops
async def test_a_session_may_be_refused_by_several_connections_at_the_same_time(version):
    script = ResumingInThreads()
    with ThreadServer(script, own_context(version)) as server:
        async with pool(**RESUMING) as request:
            for _ in range(2):
                await get(request, server.url)
            server.context = own_context(version)
            await asyncio.gather(*[get(request, server.url) for _ in range(2)])
            await get(request, server.url)
    assert script.resumed == [False, True, False, False, True]


@TLS_VERSIONS
@on_loops
async def test_a_session_is_forgotten_when_a_handshake_fails(version):
    script = ResumingInThreads()
    context = own_context(version)
    with ThreadServer(script, context) as server:
        async with pool(**RESUMING) as request:
            for _ in range(2):
                await get(request, server.url)
            server.context = own_context(version, names=('other.test',))
            await failed(
                get(request, server.url), HttpTlsError, ssl.SSLCertVerificationError)
            server.context = context
            for _ in range(2):
                assert (await get(request, server.url))[2] == b'ok'
    assert script.resumed == [False, True, False, True]


# ---------------------------------------------------------------------- TLS: bad servers

def context_for_common_name(name):
    """A server's context whose certificate has the name where it was before RFC 2818."""
    key = ec.generate_private_key(ec.SECP256R1())
    issuer_key = serialization.load_pem_private_key(
        authority().private_key_pem.bytes(), password=None)
    issuer = x509.load_pem_x509_certificate(authority().cert_pem.bytes())
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(issuer_key, hashes.SHA256()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption()) + certificate.public_bytes(serialization.Encoding.PEM)
    with tempfile.NamedTemporaryFile() as file:
        file.write(pem)
        file.flush()
        context.load_cert_chain(file.name)
    return context


@on_loops
async def test_a_common_name_is_not_where_an_address_is_looked_for():
    answering = AnsweringInThreads()
    with ThreadServer(answering, context_for_common_name('127.0.0.1')) as server:
        async with pool(get_ssl_context=trusting) as request:
            error = await failed(
                request(b'GET', server.url + 'path?query'), HttpTlsError,
                ssl.SSLCertVerificationError)
    assert str(error).startswith(
        f'{peer_prefix(server)}: the TLS handshake failed: [SSL: CERTIFICATE_VERIFY_FAILED] '
        "certificate verify failed: IP address mismatch, certificate is not valid for '127.0.0.1'")
    assert answering.socks == []


@on_loops
async def test_by_default_a_common_name_is_not_where_a_name_is_looked_for(monkeypatch):
    answering = AnsweringInThreads()
    with tempfile.NamedTemporaryFile() as file, \
            ThreadServer(answering, context_for_common_name('name.test')) as server:
        file.write(authority().cert_pem.bytes())
        file.flush()
        monkeypatch.setenv('SSL_CERT_FILE', file.name)
        async with pool(get_dns_resolver=always('127.0.0.1')) as request:
            await failed(
                request(b'GET', f'https://name.test:{server.port}/'), HttpTlsError,
                ssl.SSLCertVerificationError)
    assert answering.socks == []


def without(left_out, *extensions):
    """Pairs of an extension and whether it is critical, but for one of them by its class, which
    is left out or, if it is the basic constraints, not critical."""
    return [(extension, is_critical and type(extension) is not left_out)
            for extension, is_critical in extensions
            if type(extension) is not left_out or left_out is x509.BasicConstraints]


def issued(key, subject, issuer, issuer_key, extensions):
    def named(name):
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(subject)).issuer_name(named(issuer)).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1)))
    for extension, is_critical in extensions:
        builder = builder.add_extension(extension, is_critical)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def private_authority(name, left_out=None):
    """The PEM of an authority as textbooks make it, and a server's context with a certificate of
    it for the name. One extension may be missing."""
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    identifier = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())
    usage = dict.fromkeys((
        'digital_signature', 'content_commitment', 'key_encipherment', 'data_encipherment',
        'key_agreement', 'encipher_only', 'decipher_only'), False)
    root = issued(authority_key, 'Our authority', 'Our authority', authority_key, without(
        left_out, (x509.BasicConstraints(ca=True, path_length=None), True), (identifier, False),
        (x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), True)))
    leaf = issued(key, 'A server', 'Our authority', authority_key, without(
        left_out, (x509.SubjectAlternativeName([x509.DNSName(name)]), False),
        (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), False)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        file.write(leaf + key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption()))
        file.flush()
        context.load_cert_chain(file.name)
    return root.decode(), context


def strict_context(root):
    """That of Python 3.13 and later, in earlier ones, too."""
    context = ssl.create_default_context(cadata=root)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


# What a private authority or its certificates lack, and what OpenSSL says to that.
LACKING = {
    x509.KeyUsage: 'CA cert does not include key usage extension',
    x509.SubjectKeyIdentifier: 'Missing Subject Key Identifier',
    x509.AuthorityKeyIdentifier: 'Missing Authority Key Identifier',
    x509.BasicConstraints: 'Basic Constraints of CA cert not marked critical',
}
STRICT_HINT = (' (Python 3.13 and later ask for what RFC 5280 does: issue the certificate anew, '
               'or clear ssl.VERIFY_X509_STRICT in the verify_flags of your own context)')


@pytest.mark.parametrize('left_out', LACKING)
@on_loops
async def test_a_private_authority_that_is_too_lax_for_new_pythons_says_what_to_do(left_out):
    root, server_side = private_authority('name.test', left_out)

    def lax_context():
        context = strict_context(root)
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return context

    with ThreadServer(AnsweringInThreads(), server_side) as server:
        url = f'https://name.test:{server.port}/'
        options = {'get_dns_resolver': always('127.0.0.1')}
        async with pool(get_ssl_context=lambda: strict_context(root), **options) as request:
            error = await failed(request(b'GET', url), HttpTlsError, ssl.SSLCertVerificationError)
            assert as_printed(error) == (
                f'HttpTlsError: GET {url[:-1]} (peer 127.0.0.1:{server.port}): the TLS handshake '
                'failed: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: '
                f'{LACKING[left_out]}{STRICT_HINT}')
        async with pool(get_ssl_context=lax_context, **options) as request:
            assert (await get(request, url))[2] == b'ok'


@on_loops
async def test_a_private_authority_as_the_readme_makes_it_is_trusted_by_new_pythons():
    root, server_side = private_authority('name.test')
    with ThreadServer(AnsweringInThreads(), server_side) as server:
        async with pool(get_ssl_context=lambda: strict_context(root),
                        get_dns_resolver=always('127.0.0.1')) as request:
            assert (await get(request, f'https://name.test:{server.port}/'))[2] == b'ok'


@pytest.mark.parametrize('least, expected', [
    (ssl.TLSVersion.MINIMUM_SUPPORTED, TLS_1_2), (TLS_1_2, TLS_1_2), (TLS_1_3, TLS_1_3)])
def test_the_least_version_of_tls_is_1_2_or_what_the_system_says(monkeypatch, least, expected):
    """Debian's builds of Python leave it to OpenSSL's configuration."""
    def create_default_context():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = least
        return context

    monkeypatch.setattr(ssl, 'create_default_context', create_default_context)
    assert default_of('get_ssl_context')().minimum_version == expected


@on_loops
async def test_an_error_tells_that_a_server_does_not_speak_tls():
    sent = []

    async def answering_plain(peer):
        # Whatever comes is a bad request, as to a server of plain HTTP.
        sent.append(await peer.reader.read(65536))
        await peer.send(b'HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n')
        sent.append(await peer.closed())

    async def greeting(peer):
        await peer.send(b'220 smtp.test ESMTP\r\n')
        sent.append(await peer.closed())

    for script in (answering_plain, greeting):
        async with Server(script) as server, pool(get_ssl_context=trusting) as request:
            sent.clear()
            error = await failed(
                request(b'GET', f'https://127.0.0.1:{server.port}/path'), HttpTlsError,
                ssl.SSLError)
            assert str(error).startswith(
                f'GET https://127.0.0.1:{server.port} (peer 127.0.0.1:{server.port}): the TLS '
                'handshake failed: SSLError: [SSL: ')
            assert 'wrong version number' in str(error)
            assert str(error).endswith(' (the peer does not speak TLS)')
            await until(lambda: sent)
            assert b'GET' not in b''.join(sent)
            assert b'/path' not in b''.join(sent)


class RefusingTls:
    """A script of a plain socket, for a client that the context refuses. It does what TLS asks
    for, and then takes all that comes, so that no reset overtakes what it said."""

    def __init__(self, context):
        self.context = context
        self.reasons = []
        self.data = b''

    def __call__(self, sock):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = self.context.wrap_bio(incoming, outgoing, server_side=True)
        while True:
            try:
                tls.do_handshake()
                self.data += tls.read()
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(65536))
            except ssl.SSLError as error:
                self.reasons.append(error.reason)
                sock.sendall(outgoing.read())
                break
        sock.shutdown(socket.SHUT_WR)
        receive_end(sock)


REFUSED_HANDSHAKE = (' (the peer refused the handshake: it may share no version, cipher or group, '
                     'or want a client certificate)')
LARGE_UPLOAD = bytes(10_000_000)
UNCERTIFIED = {
    'GET': {},
    'PUT': {'headers': ((b'content-length', b'%d' % len(LARGE_UPLOAD)),),
            'body': streamed(LARGE_UPLOAD)},
}


@TLS_VERSIONS
@on_loops
async def test_a_request_without_the_certificate_that_the_server_wants_is_never_heard(version):
    script = RefusingTls(wanting_certificates(version))
    with ThreadServer(script) as server:
        origin = f'https://127.0.0.1:{server.port}'
        async with pool(get_ssl_context=trusting) as request:
            for method, options in UNCERTIFIED.items():
                with row(method):
                    error = await failed(
                        request(method.encode(), origin + '/path', **options),
                        HttpDataError if version == TLS_1_3 else HttpTlsError, ssl.SSLError)
                    assert str(error).startswith(
                        f'{method} {origin} (peer 127.0.0.1:{server.port})')
                    # The client's part of a handshake of TLS 1.3 ends before the server has
                    # looked at it.
                    assert ('CERTIFICATE_REQUIRED' if version == TLS_1_3 else
                            'the TLS handshake failed: SSLError: [SSL: SSLV3_ALERT_HANDSHAKE_'
                            'FAILURE]') in str(error)
                    assert str(error).endswith(
                        ' (the peer wants a client certificate)' if version == TLS_1_3 else
                        REFUSED_HANDSHAKE)
                    assert (error.reused, error.response_started) == (False, False)
    assert script.reasons == ['PEER_DID_NOT_RETURN_A_CERTIFICATE'] * 2
    assert script.data == b''


def limited(context, version=None, ciphers=None, group=None):
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if ciphers is not None:
        context.set_ciphers(ciphers)
    if group is not None:
        context.set_ecdh_curve(group)
    return context


def with_unknown_certificate():
    """A client's context with a certificate of an authority that the server does not know."""
    context = trusting.__wrapped__()
    trustme.CA().issue_cert('client.test').configure_cert(context)
    return context


FAILED = ': the TLS handshake failed: SSLError: [SSL: '
AFTER_HANDSHAKE = ', reading the response head: SSLError: [SSL: '
OTHER_VERSION = ' (the peer allows none of the TLS versions of the SSL context)'
UNKNOWN_CERTIFICATE = " (the peer does not know the client certificate's authority)"
# What server and client allow, or have, and how the message of the error begins and ends.
NOT_IN_COMMON = {
    'versions': ({'version': TLS_1_2}, {'version': TLS_1_3}, FAILED, OTHER_VERSION),
    'versions, of which the server wants the newer': (
        {'version': TLS_1_3}, {'version': TLS_1_2}, FAILED, OTHER_VERSION),
    'ciphers': ({'version': TLS_1_2, 'ciphers': 'ECDHE+AES256'},
                {'version': TLS_1_2, 'ciphers': 'ECDHE+AES128'}, FAILED, REFUSED_HANDSHAKE),
    'groups in TLS 1.2': ({'version': TLS_1_2, 'group': 'secp384r1'},
                          {'version': TLS_1_2, 'group': 'prime256v1'}, FAILED, REFUSED_HANDSHAKE),
    'groups in TLS 1.3': ({'version': TLS_1_3, 'group': 'secp384r1'},
                          {'version': TLS_1_3, 'group': 'prime256v1'}, FAILED, REFUSED_HANDSHAKE),
}
UNWANTED = {
    'no certificate, TLS 1.2': (TLS_1_2, False, FAILED, REFUSED_HANDSHAKE),
    'no certificate, TLS 1.3': (
        TLS_1_3, False, AFTER_HANDSHAKE, ' (the peer wants a client certificate)'),
    'unknown certificate, TLS 1.2': (TLS_1_2, True, FAILED, UNKNOWN_CERTIFICATE),
    'unknown certificate, TLS 1.3': (TLS_1_3, True, AFTER_HANDSHAKE, UNKNOWN_CERTIFICATE),
}


@on_loops
async def test_a_hint_for_a_refused_handshake_says_only_what_can_be():
    """Of the reasons for a failed handshake, its alert names some, and does not tell others."""
    cases = {name: (limited(certified('127.0.0.1'), **server),
                    limited(trusting.__wrapped__(), **client), begin, end)
             for name, (server, client, begin, end) in NOT_IN_COMMON.items()}
    for name, (version, has_certificate, begin, end) in UNWANTED.items():
        client = with_unknown_certificate() if has_certificate else trusting()
        cases[name] = wanting_certificates(version), client, begin, end
    for name, (server_side, client, begin, end) in cases.items():
        with row(name), ThreadServer(RefusingTls(server_side)) as server:
            origin = f'https://127.0.0.1:{server.port}'
            async with pool(get_ssl_context=functools.partial(lambda same: same, client)) \
                    as request:
                error = await failed(
                    request(b'GET', origin),
                    HttpTlsError if begin is FAILED else HttpDataError, ssl.SSLError)
                assert str(error).startswith(
                    f'GET {origin} (peer 127.0.0.1:{server.port}){begin}')
                assert str(error).endswith(f'){end}')
                assert (error.reused, error.response_started) == (False, False)


def alert(number):
    """RFC 8446 6, 5.1."""
    return b'\x15\x03\x03\0\2\2%c' % number


# RFC 5246 7.4.1.3, but with the version of TLS 1.0.
OLD_SERVER_HELLO = b'\x16\3\1\0\x2a\2\0\0\x26\3\1' + bytes(32) + b'\0\0\x2f\0'
SAID_IN_HANDSHAKE = {
    'handshake_failure': (alert(40), REFUSED_HANDSHAKE),
    'bad_certificate': (
        alert(42), ' (the peer got no client certificate, or does not accept it)'),
    'unknown_ca': (alert(48), UNKNOWN_CERTIFICATE),
    'protocol_version': (alert(70), OTHER_VERSION),
    'unrecognized_name': (alert(112), ''),
    'certificate_required': (alert(116), ' (the peer wants a client certificate)'),
    'an old version': (
        OLD_SERVER_HELLO, ' (the SSL context does not allow the TLS version of the peer)'),
}


@on_loops
async def test_what_a_server_says_in_the_handshake_is_told_with_a_hint():
    async def script(said, peer):
        await peer.reader.read(65536)
        await peer.send(said)
        await peer.closed()

    for name, (said, hint) in SAID_IN_HANDSHAKE.items():
        async with (Server(functools.partial(script, said)) as server,
                    pool(get_ssl_context=trusting) as request):
            with row(name):
                error = await failed(
                    request(b'GET', f'https://127.0.0.1:{server.port}'), HttpTlsError,
                    ssl.SSLError)
                assert re.sub(r' \(_ssl\.c:\d+\)', '|', str(error)).partition('|')[2] == hint


@on_loops_at_once
async def test_a_handshake_that_hangs_uses_no_cpu_and_holds_no_place_for_long():
    """However many of them there are: each has its time, and then its place is free."""
    async def silent(peer):
        await peer.closed()

    cpu = time.thread_time()
    options = {'get_ssl_context': trusting, 'socket_timeout': 0.3, 'max_connections': 10,
               'get_sock': Socks(10)}
    async with Server(silent) as server, pool(**options) as request:
        url = f'https://127.0.0.1:{server.port}'
        await asyncio.gather(*[
            failed(request(b'GET', url), HttpTlsError, TimeoutError,
                   f'GET {url} (peer 127.0.0.1:{server.port}): the TLS handshake failed: '
                   'TimeoutError: socket_timeout, 0.3 seconds, passed')
            for _ in range(20)])
        assert len(server.peers) == 20
    assert time.thread_time() - cpu < 0.3  # half of the time that it takes to wait


# ----------------------------------------------------------------------- early responses
#
# Those that come before the request has been sent.


class Sending:
    """A body of chunks, and of functions which it awaits between them. It keeps how it ended,
    and if that was in the task that called it."""

    def __init__(self, *steps):
        self.steps = steps
        self.events = []
        self.yielded = 0

    async def __call__(self):
        task = asyncio.current_task()
        try:
            for step in self.steps:
                if callable(step):
                    await step()
                else:
                    self.yielded += 1
                    yield step
        except BaseException as error:
            self.events.append(type(error))
            raise
        finally:
            self.events.append(asyncio.current_task() is task)
            await asyncio.sleep(0)
            await asyncio.sleep(0.001)
            self.events.append('cleaned up')


def endless(*steps):
    """A body that repeats its last step for ever."""
    body = Sending()
    body.steps = itertools.chain(steps, itertools.repeat(steps[-1]))
    return body


async def a_turn():
    await asyncio.sleep(0)


async def never():
    await asyncio.get_running_loop().create_future()


async def a_task():
    await asyncio.create_task(forever())


async def a_moment():
    await asyncio.sleep(0.001)


CANCELLED = [asyncio.CancelledError, True, 'cleaned up']
CLOSED_IN_TURN = [GeneratorExit, True, 'cleaned up']
SWALLOWED = [True, 'cleaned up']

# More than the buffers between a client and a server that does not read can hold.
BLOCKING = bytes(10_000_000)

# What the client is at when the response comes: a body, what it sees, and if the server reads.
STATES = {
    'right after the head': (lambda: Sending(forever), CANCELLED, True),
    'waiting for an event': (lambda: Sending(b'a', forever), CANCELLED, True),
    'waiting for a future': (lambda: Sending(b'a', never), CANCELLED, True),
    'waiting for a task': (lambda: Sending(b'a', a_task), CANCELLED, True),
    'waiting for a little': (lambda: endless(b'a', a_moment), CANCELLED, True),
    'the server does not read the first chunk': (lambda: Sending(BLOCKING), CLOSED_IN_TURN, False),
    'the server does not read the second chunk': (
        lambda: Sending(b'a', a_turn, BLOCKING), CLOSED_IN_TURN, False),
    'chunk after chunk, but the server does not read': (
        lambda: endless(bytes(50_000)), CLOSED_IN_TURN, False),
    'chunk after chunk': (lambda: endless(bytes(50_000)), CLOSED_IN_TURN, True),
}

HINTS = b'HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\n'
LONG_BODY = bytes(range(256)) * 1000
CODED = (b'HTTP/1.1 429 Too Many Requests\r\ntransfer-encoding: chunked\r\n\r\n'
         b'1\r\no\r\n1;x=y\r\nk\r\n0\r\n')

# Responses that end the sending: the code, the body, the trailers, and what is on the wire.
FINAL = {
    '300': (b'300', b'ok', (), with_length(start=b'HTTP/1.1 300 Multiple Choices')),
    '302': (b'302', b'ok', (), with_length(b'location: /', start=b'HTTP/1.1 302 Found')),
    '304': (b'304', b'', (), b'HTTP/1.1 304 Not Modified\r\n\r\n'),
    '413': (b'413', b'ok', (), with_length(start=b'HTTP/1.1 413 Content Too Large')),
    '500': (b'500', b'ok', (), with_length(start=b'HTTP/1.1 500 Internal Server Error')),
    '503 in HTTP/1.0': (b'503', b'', (), b'HTTP/1.0 503 \r\ncontent-length: 0\r\n\r\n'),
    '999': (b'999', b'ok', (), with_length(start=b'HTTP/1.1 999 ')),
    'chunked': (b'429', b'ok', (), CODED + b'\r\n'),
    'trailers': (b'429', b'ok', ((b'a', b'b'),), CODED + b'A: b\r\n\r\n'),
    'long': (b'403', LONG_BODY, (), b'HTTP/1.1 403 Forbidden\r\ncontent-length: %d\r\n\r\n%b'
             % (len(LONG_BODY), LONG_BODY)),
    'after interim responses': (
        b'401', b'ok', (), CONTINUE + HINTS + CONTINUE
        + with_length(start=b'HTTP/1.1 401 Unauthorized')),
}


def cut_head_into_bytes(raw):
    return [*cut_into_bytes(raw[:250]), *([raw[250:]] if len(raw) > 250 else [])]


def cut_after_lines(raw):
    return [*raw[:250].splitlines(keepends=True), *([raw[250:]] if len(raw) > 250 else [])]


CUTS = {
    'whole': lambda raw: [raw],
    'byte by byte': cut_head_into_bytes,
    'cut after each line': cut_after_lines,
}


class Early:
    """A script that answers each PUT as its path says, before it reads the body, and keeps what
    it got until the client closed. A GET is answered after it was read."""

    def __init__(self, *cases):
        self.cases = cases  # the pieces of each response, and if the body is read meanwhile
        self.ends = {}
        self.gets = []  # the indexes of the connections

    async def __call__(self, peer):
        while True:
            head = await peer.read_head()
            if head.startswith(b'GET'):
                self.gets.append(peer.index)
                await peer.send(OK)
                continue
            number = int(head.split()[1][1:])
            pieces, is_read = self.cases[number]
            if is_read:
                reading = asyncio.ensure_future(reading_all(peer))
            else:
                peer.writer.transport.pause_reading()
            await turns(30)  # until the client can send no more
            with contextlib.suppress(ConnectionError):
                await peer.send(*pieces)
            if not is_read:
                await turns(30)
                reading = asyncio.ensure_future(reading_all(peer))
                peer.writer.transport.resume_reading()
            self.ends[number] = await reading
            return


async def reading_all(peer):
    """How many bytes come until the client has closed. Over TLS it may do so in a record."""
    length = 0
    with contextlib.suppress(ConnectionError, OSError):
        while data := await peer.reader.read(2 ** 20):
            length += len(data)
    return length


@contextlib.asynccontextmanager
async def early_server(scheme, *cases):
    script = Early(*cases)
    async with Server(script, context_of(scheme)) as server:
        server.early = script
        yield server


def uploading(request, server, body, number=0, length=10 ** 9, headers=()):
    return request(b'PUT', f'{server.url}{number}', headers=(*of_length(length), *headers),
                   body=body)


@pytest.mark.parametrize('cut', CUTS)
@SCHEMES
@on_loops
async def test_a_final_response_ends_the_sending_and_is_returned(scheme, cut):
    async def check(server, number, response, state):
        code, content, trailers, _ = FINAL[response]
        make, events, is_read = STATES[state]
        body = make()
        with row(f'{response}, {state}'):
            async with pool(get_ssl_context=trusting, get_sock=small_sock) as request:
                response = await uploading(request, server, body, number)
                assert body.events == events
                assert cancelling() == 0
                assert response[0] == code
                assert await buffered(response[2]) == content
                assert response[2].trailers == trailers
                # It was sent no further, so the connection is of no use any more.
                await until(lambda: number in server.early.ends)
                assert server.early.ends[number] < (10 ** 8 if is_read else len(BLOCKING))
                assert (await get(request, server.url))[2] == b'ok'

    # Each response while the client waits and while it is blocked, and each state.
    pairs = [(response, state) for response in FINAL for state in STATES
             if response == '413' or state == 'waiting for an event'
             or state == 'the server does not read the first chunk']
    cases = [(CUTS[cut](FINAL[response][3]), STATES[state][2]) for response, state in pairs]
    async with early_server(scheme, *cases) as server, asyncio.TaskGroup() as group:
        for number, (response, state) in enumerate(pairs):
            group.create_task(check(server, number, response, state))


@SCHEMES
@on_loops
async def test_a_switch_of_protocols_that_was_not_asked_for_ends_the_sending(scheme):
    body = Sending(b'a', forever)
    async with (early_server(scheme, ([SWITCHING + b'\r\n\r\n'], True)) as server,
                pool(get_ssl_context=trusting) as request):
        error = await failed(
            uploading(request, server, body), HttpDataError, ValueError)
        assert str(error).endswith(
            ', reading the response head: got 101 Switching Protocols, but the request had no '
            'upgrade')
        assert (body.events, error.response_started) == (CANCELLED, True)


@on_loops
async def test_a_look_at_what_came_while_sending_may_have_to_wait_to_send():
    async def script(peer):
        await peer.read_head()
        WantingToWrite.wants = 3
        await peer.send(FINAL['413'][3])
        await peer.closed()

    body = Sending(b'a', forever)
    async with (Server(script, server_context()) as server,
                pool(get_ssl_context=wanting_to_write) as request):
        response = await uploading(request, server, body)
        assert (response[0], await buffered(response[2])) == (b'413', b'ok')
        assert (body.events, WantingToWrite.wants) == (CANCELLED, 0)


@SCHEMES
@on_loops
async def test_a_final_response_ends_the_sending_of_a_body_that_only_takes_turns(scheme):
    async def limited(number, body):
        async with asyncio.timeout(5):
            code, _, response = await uploading(request, server, body, number)
            assert (code, await buffered(response)) == (b'413', b'ok')
            assert body.events == CANCELLED

    cases = [([FINAL['413'][3]], True)] * 2
    async with (early_server(scheme, *cases) as server,
                pool(get_ssl_context=trusting) as request):
        await limited(0, endless(b'a', a_turn))
        await limited(1, endless(a_turn))


@SCHEMES
@on_loops
async def test_a_connection_is_closed_after_an_early_response_that_may_end_later(scheme):
    """Its body goes to the end of the stream, or has not come yet."""
    go_on = asyncio.Event()

    async def script(peer):
        await peer.read_head()
        await peer.send(b'HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\no')
        await go_on.wait()
        await peer.send(b'k')
        assert await peer.closed() == b'a'
        ends.append(peer.index)

    ends = []
    async with (Server(script, context_of(scheme)) as server,
                pool(get_ssl_context=trusting) as request):
        body = Sending(b'a', forever)
        code, _, response = await request(b'PUT', server.url, headers=of_length(2), body=body)
        assert (code, await anext(response), body.events) == (b'403', b'o', CANCELLED)
        assert ends == []
        go_on.set()
        assert await buffered(response) == b'k'
        await until(lambda: ends == [0])


@on_loops
async def test_an_early_response_may_go_to_the_end_of_the_stream():
    async def script(peer):
        await peer.read_head()
        await peer.send(b'HTTP/1.1 403 Forbidden\r\n\r\n', b'o', b'k')
        peer.writer.write_eof()
        ends.append(await peer.closed())

    ends = []
    async with Server(script) as server, pool() as request:
        code, _, response = await request(
            b'PUT', server.url, headers=of_length(2), body=Sending(b'a', forever))
        assert (code, await buffered(response)) == (b'403', b'ok')
        await until(lambda: ends == [b'a'])


@on_loops
async def test_bytes_after_an_early_response_are_never_delivered():
    raw = FINAL['413'][3] + FORGED
    async with early_server('http', ([raw], True)) as server, pool() as request:
        code, _, response = await uploading(request, server, Sending(b'a', forever))
        assert (code, await buffered(response)) == (b'413', b'ok')
        assert (await get(request, server.url))[2] == b'ok'
        assert server.early.gets == [1]


async def failing_when_closed():
    try:
        yield b'a'
        await forever()
    finally:
        await asyncio.sleep(0)
        raise LookupError('in the cleaning up')


async def failing_when_cancelled():
    try:
        yield b'a'
        await forever()
    except asyncio.CancelledError:
        raise LookupError('instead of the cancellation') from None


async def ending_when_cancelled():
    yield b'a'
    with contextlib.suppress(asyncio.CancelledError):
        await forever()


async def going_on_when_cancelled():
    yield b'a'
    with contextlib.suppress(asyncio.CancelledError):
        await forever()
    for _ in range(3):
        yield b'more'
    raise AssertionError('it was asked for more')


async def waiting_when_cancelled():
    yield b'a'
    with contextlib.suppress(asyncio.CancelledError):
        await forever()
    await asyncio.sleep(0.001)
    yield b'more'
    raise AssertionError('it was asked for more')


async def yielding_in_its_cleaning_up():
    try:
        yield b'a'
        await forever()
    finally:
        yield b'more'


async def with_a_timeout_of_its_own():
    yield b'a'
    async with asyncio.timeout(10):
        await forever()


async def with_a_timeout_in_its_cleaning_up():
    try:
        yield b'a'
        await forever()
    finally:
        async with asyncio.timeout(0.001):
            await forever()


async def with_a_task_group():
    yield b'a'
    async with asyncio.TaskGroup() as group:
        group.create_task(forever())


async def with_a_blocked_chunk():
    try:
        yield b'a'
        yield BLOCKING
    finally:
        await asyncio.sleep(0.001)
        raise LookupError('in the cleaning up')


class EndlessIterator:
    """No generator, so there is nothing to close."""

    is_first = True

    def __aiter__(self):
        return self

    async def __anext__(self):
        is_first, self.is_first = self.is_first, False
        if is_first:
            return b'a'
        return await forever()


@pytest.mark.parametrize('make', [
    failing_when_closed, failing_when_cancelled, ending_when_cancelled, going_on_when_cancelled,
    waiting_when_cancelled, yielding_in_its_cleaning_up, with_a_timeout_of_its_own,
    with_a_timeout_in_its_cleaning_up, with_a_task_group, with_a_blocked_chunk, EndlessIterator])
@on_loops
async def test_an_early_response_is_returned_whatever_the_body_makes_of_its_end(make):
    async def body():
        chunks = aiter(make())
        try:
            async for chunk in chunks:
                yield chunk
        finally:
            try:
                if hasattr(chunks, 'aclose'):
                    await chunks.aclose()
            finally:
                ends.append(asyncio.current_task())

    ends = []
    is_read = make is not with_a_blocked_chunk
    async with (early_server('http', ([FINAL['413'][3]], is_read)) as server,
                pool(get_sock=small_sock) as request):
        for function in (body, make):
            code, _, response = await uploading(request, server, function)
            assert (code, await buffered(response)) == (b'413', b'ok')
            assert cancelling() == 0
        assert ends == [asyncio.current_task()]
        assert (await get(request, server.url))[2] == b'ok'
        assert server.early.gets == [2]


@pytest.mark.parametrize('limit', ['cancel', 'asyncio.timeout'])
@on_loops
async def test_a_cancellation_wins_over_an_early_response_while_the_body_is_closed(limit):
    async def body():
        try:
            yield b'a'
            await forever()
        finally:
            cleans_up.set()
            await forever()

    async def upload():
        async with asyncio.timeout(None if limit == 'cancel' else 0.05):
            await uploading(request, server, body)

    cleans_up = asyncio.Event()
    async with early_server('http', ([FINAL['413'][3]], True)) as server, pool() as request:
        task = asyncio.create_task(upload())
        await cleans_up.wait()
        if limit == 'cancel':
            task.cancel()
        [error] = await asyncio.gather(task, return_exceptions=True)
        assert type(error) is (asyncio.CancelledError if limit == 'cancel' else TimeoutError)
        assert task.cancelling() == (limit == 'cancel')
        await until(lambda: server.early.ends)


@on_loops
async def test_a_timeout_around_a_request_that_is_answered_early_has_no_effect_afterwards():
    async with early_server('http', ([FINAL['413'][3]], True)) as server, pool() as request:
        async with asyncio.timeout(PATIENCE / 2):
            code, _, response = await uploading(request, server, Sending(b'a', forever))
        assert (code, await buffered(response)) == (b'413', b'ok')
        assert cancelling() == 0


# Responses that do not end the sending, and what is on the wire.
WELCOME = {
    '200': (b'200', b'ok', OK),
    '201': (b'201', b'ok', with_length(b'location: /', start=b'HTTP/1.1 201 Created')),
    '204': (b'204', b'', b'HTTP/1.1 204 No Content\r\n\r\n'),
    '299 after interim responses': (
        b'299', b'ok', CONTINUE + HINTS + with_length(start=b'HTTP/1.1 299 ')),
    '200 with a long body': (
        b'200', LONG_BODY,
        b'HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b' % (len(LONG_BODY), LONG_BODY)),
    'interim responses': (b'200', b'ok', CONTINUE + HINTS),
}


@pytest.mark.parametrize('cut', CUTS)
@SCHEMES
@on_loops
async def test_below_300_sending_goes_on_to_its_end_and_the_connection_is_reused(scheme, cut):
    cases = [(response, is_blocked) for response in WELCOME
             for is_blocked in ((False, True) if cut == 'whole' else (False,))]
    answered = [asyncio.Event() for _ in cases]
    lengths = {}

    async def script(peer):
        head = await peer.read_head()
        number = int(head.split()[1][1:])
        raw = WELCOME[cases[number][0]][2]
        peer.writer.transport.pause_reading()
        await turns(30)
        await peer.send(*CUTS[cut](raw))
        await turns(30)
        answered[number].set()
        peer.writer.transport.resume_reading()
        lengths[number] = 0
        while lengths[number] < of_case(number):
            data = await peer.reader.read(2 ** 20)
            if not data:
                return
            lengths[number] += len(data)
        if cases[number][0] == 'interim responses':
            await peer.send(OK)
        await peer.read_head()
        lengths[number] = 'and another request'
        await peer.send(OK)

    def of_case(number):
        return len(BLOCKING) if cases[number][1] else 2

    async def check(number):
        name, is_blocked = cases[number]
        code, content, _ = WELCOME[name]
        body = Sending(BLOCKING) if is_blocked else Sending(b'a', answered[number].wait, b'b')
        # Not the smallest: with that, the kernel takes milliseconds for each of many sends.
        get_sock = functools.partial(small_sock, size=2 ** 16)
        with row(cases[number]):
            async with pool(get_ssl_context=trusting, get_sock=get_sock) as request:
                response = await uploading(request, server, body, number, of_case(number))
                assert answered[number].is_set()
                assert body.events == [True, 'cleaned up']
                assert response[0] == code
                assert await buffered(response[2]) == content
                await until(lambda: lengths[number] == of_case(number))
                assert (await get(request, server.url))[2] == b'ok'
                assert lengths[number] == 'and another request'

    async with Server(script, context_of(scheme)) as server, asyncio.TaskGroup() as group:
        for number in range(len(cases)):
            group.create_task(check(number))
    assert len(server.peers) == len(cases)


MALFORMED = {
    'a bad status line': (
        b'HTTP/9 400\r\n\r\n', HttpDataError, ValueError,
        'bad status line: expected HTTP/1.x, a space, three digits and a reason, got '
        "b'HTTP/9 400\\r'"),
    'a bad field line': (
        b'HTTP/1.1 400 \r\n: b\r\n\r\n', HttpDataError, ValueError,
        "bad field line: expected a token, \":\" and a value, got b': b\\r'"),
    'a long head': (
        b'HTTP/1.1 400 \r\na: ' + bytes(500).replace(b'\0', b'b'), HttpHeaderTooLong, None,
        'the head is longer than max_header_length, 400 bytes'),
    'many interim responses': (
        CONTINUE * 101, HttpDataError, ValueError, 'got more than 100 interim responses'),
    'rubbish after an interim response': (
        CONTINUE + b'\0\n', HttpDataError, ValueError,
        'bad status line: expected HTTP/1.x, a space, three digits and a reason, got '
        "b'\\x00'"),
}

UPLOADS = {
    'right after the head': (lambda: Sending(forever), CANCELLED, True),
    'waiting': (lambda: Sending(b'a', forever), CANCELLED, True),
    'blocked': (lambda: Sending(BLOCKING), CLOSED_IN_TURN, False),
    'chunk after chunk': (lambda: endless(bytes(50_000)), CLOSED_IN_TURN, True),
}


@SCHEMES
@on_loops
async def test_an_early_response_that_is_malformed_ends_the_request(scheme):
    async def check(server, number, case, state):
        _, kind, cause, text = MALFORMED[case]
        make, events, _ = UPLOADS[state]
        body = make()
        with row(f'{case}, {state}'):
            async with pool(get_ssl_context=trusting, get_sock=small_sock,
                            max_header_length=400) as request:
                error = await failed(
                    uploading(request, server, body, number), kind, cause,
                    at(server, f'reading the response head: {text}'))
                assert (error.reused, error.response_started) == (False, True)
                assert body.events == events
                await until(lambda: number in server.early.ends)

    pairs = [(case, state) for case in MALFORMED for state in UPLOADS]
    cases = [([MALFORMED[case][0]], UPLOADS[state][2]) for case, state in pairs]
    async with early_server(scheme, *cases) as server, asyncio.TaskGroup() as group:
        for number, (case, state) in enumerate(pairs):
            group.create_task(check(server, number, case, state))


SHORT = b'HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nok'
LAST = with_length(b'connection: close')
AFTER_HEAD = ' (after the head of a response, 200)'

# How a server ends the connection after some bytes while it gets a body: what it has sent, the
# cause, and what is said of it.
ENDS = {
    'an end': (b'', 'end', EOFError,
               'the peer closed the connection, after no byte of the response head' + MAY_BE_TLS),
    'an end in the head': (b'HTTP/1.1 4', 'end', EOFError,
                           "the peer closed the connection, after b'HTTP/1.1 4'"),
    'an end after an interim response': (
        CONTINUE, 'end', EOFError,
        'the peer closed the connection, after no byte of the response head'),
    'an end in a body below 300': (
        SHORT, 'end', EOFError, 'the response is cut off: the peer closed the connection, 2 bytes '
        'before the end that content-length told' + AFTER_HEAD),
    'an end in a chunked body below 300': (
        chunked(b'1\r\na\r\n'), 'end', EOFError, 'the response is cut off: the peer closed the '
        'connection in a chunk-size line' + AFTER_HEAD),
    'a reset': (b'', 'reset', ConnectionResetError,
                'ConnectionResetError: [Errno 104] Connection reset by peer' + MAY_BE_TLS),
    'a reset after an interim response': (
        HINTS, 'reset', ConnectionResetError,
        'ConnectionResetError: [Errno 104] Connection reset by peer'),
    'a reset in a body below 300': (
        SHORT, 'reset', ConnectionResetError,
        'ConnectionResetError: [Errno 104] Connection reset by peer' + AFTER_HEAD),
}


@pytest.mark.usefixtures('only_full_collections')
@on_loops
async def test_a_request_that_has_failed_keeps_nothing_until_garbage_is_collected():
    """Its frames hold what it was given, and are held themselves while its error is."""
    async def script(peer):
        await peer.read_head()
        if await peer.read(1) == b'a':
            await peer.send(b'HTTP/1.1 2000 OK\r\n\r\n')
        else:
            peer.writer.transport.pause_reading()
        await forever()

    async def message_of(failing):
        # Who keeps the error itself in a variable makes a cycle, too.
        try:
            await failing
        except HttpDataError as error:
            return str(error)

    for text, step, seconds in [
            ('reading the response head: bad status line', b'a', PATIENCE),
            ('sending the request: TimeoutError', BLOCKING, 0.5)]:
        body = Sending(step)
        kept = weakref.ref(body)
        with row(text):
            async with Server(script) as server:
                async with pool(socket_timeout=seconds, get_sock=small_sock) as request:
                    message = await message_of(
                        uploading(request, server, body, length=len(step)))
                    assert message.startswith(at(server, text))
                    del body
                    await turns(3)
                    assert kept() is None


@pytest.mark.parametrize('steps', [(forever,), (b'a', forever)],
                         ids=['right after the head', 'waiting'])
@on_loops
async def test_an_end_of_the_connection_while_the_body_waits_ends_the_request(steps):
    async def script(peer):
        raw, act, _, _ = ENDS[(await peer.read_head()).split()[1][1:].decode().replace('_', ' ')]
        await peer.send(*[raw] * bool(raw))
        if act == 'end':
            peer.writer.write_eof()
            await peer.closed()
        else:
            peer.reset()

    async with Server(script) as server, pool() as request:
        for name, (raw, _, cause, text) in ENDS.items():
            with row(name):
                body = Sending(*steps)
                error = await failed(
                    uploading(request, server, body, name.replace(' ', '_')),
                    HttpConnectionClosedError, cause,
                    at(server, f'waiting for the request body: {text}'))
                assert error.response_started == bool(raw)
                assert body.events == CANCELLED


# Whole responses below 300 that are the last of their connections, and their content.
LASTS = {
    'a length': (b'200', b'ok', with_length(b'connection: close')),
    'a length, among other options': (b'200', b'ok', with_length(b'connection: a, Close')),
    'HTTP/1.0': (b'200', b'ok', with_length(start=OLD)),
    'chunks and a trailer': (b'200', b'ok', chunked(
        b'1\r\no\r\n1\r\nk\r\n0\r\na: b\r\n\r\n', b'connection: close')),
    'the end of the connection': (b'200', b'ok', b'HTTP/1.1 200 OK\r\n\r\nok'),
    'nothing, to the end of the connection': (b'201', b'', b'HTTP/1.1 201 Created\r\n\r\n'),
    'no content': (b'204', b'', head(b'connection: close', start=NO_CONTENT)),
    'interim responses before it': (
        b'200', b'ok', CONTINUE + HINTS + with_length(b'connection: close')),
    'bytes after it': (b'200', b'ok', with_length(b'connection: close') + FORGED),
    'a long one': (b'200', LONG_BODY[:9000], head(
        b'connection: close', b'content-length: 9000') + LONG_BODY[:9000]),
}


def end_stream(sock):
    socket.socket.shutdown(sock, socket.SHUT_WR)


def say_goodbye(sock):
    """Without waiting for an answer: the client may be sending."""
    sock.settimeout(0)
    with contextlib.suppress(ssl.SSLError):
        sock.unwrap()
    sock.settimeout(PATIENCE)


class EndingBehind:
    """A script that answers an upload, ends its own side of the connection, and goes on reading
    if it is to. GETs are answered."""

    def __init__(self, raw, end, is_read=True, answers_get=True):
        self.raw = raw
        self.end = end
        self.is_read = is_read
        self.answers_get = answers_get
        self.is_over = threading.Event()

    def __call__(self, sock):
        data = b''
        while b'\r\n\r\n' not in data:
            data += sock.recv(65536)
        if data.startswith(b'GET') and self.answers_get:
            sock.sendall(OK)
            receive_end(sock)
            return
        sock.sendall(self.raw)
        self.end(sock)
        if self.is_read:
            while socket.socket.recv(sock, 2 ** 20):
                pass
        else:
            assert self.is_over.wait(PATIENCE)


ENDINGS = {
    'plain': (None, end_stream),
    'TLS, with close_notify': (server_context, say_goodbye),
    'TLS, without': (server_context, end_stream),
}


@pytest.mark.parametrize('ending', ENDINGS)
@on_loops
async def test_the_end_behind_a_whole_last_response_below_300_ends_the_sending(ending):
    context, end = ENDINGS[ending]
    for name, state in [(name, 'waiting') for name in LASTS] + [
            ('a length', state) for state in UPLOADS if state != 'waiting']:
        expected, content, raw = LASTS[name]
        make, events, is_read = UPLOADS[state]
        body = make()
        script = EndingBehind(raw, end, is_read)
        is_cut = ending == 'TLS, without' and name.endswith('the end of the connection')
        with row(f'{name}, {state}'), ThreadServer(script, context and context()) as server:
            async with pool(get_ssl_context=trusting, get_sock=small_sock) as request:
                upload = uploading(request, server, body)
                if is_cut:
                    error = await failed(upload, HttpConnectionClosedError, ssl.SSLEOFError)
                    assert str(error).startswith(at(server, 'waiting for the request body: '))
                    assert str(error).endswith(
                        f' (after the head of a response, {expected.decode()})')
                else:
                    code, _, response = await upload
                    assert (code, await buffered(response)) == (expected, content)
                    assert not response.request_sent
                assert body.events == events
                script.is_over.set()
                # Its connection is not used again.
                assert (await get(request, server.url))[2] == b'ok'
                assert len(server.socks) == 2


@SCHEMES
@on_loops
async def test_a_reset_behind_a_whole_last_response_below_300_ends_the_sending(scheme):
    """It is what a system makes of a connection that a server closes before it has read all."""
    async def script(peer):
        await peer.read_head()
        await peer.send(LAST)
        peer.reset()
        raise ConnectionResetError

    for state, (make, events, _) in UPLOADS.items():
        body = make()
        with row(state):
            async with Server(script, context_of(scheme)) as server, pool(
                    get_ssl_context=trusting, get_sock=small_sock) as request:
                code, _, response = await uploading(request, server, body)
                assert (code, await buffered(response)) == (b'200', b'ok')
                assert (response.request_sent, body.events) == (False, events)


@pytest.mark.parametrize('ending', ENDINGS)
@on_loops
async def test_the_end_behind_a_whole_last_response_that_fills_one_read_ends_the_sending(ending):
    context, end = ENDINGS[ending]
    script = EndingBehind(LAST, end)
    with ThreadServer(script, context and context()) as server:
        async with pool(get_ssl_context=trusting, recv_bufsize=len(b'ok')) as request:
            body = Sending(b'a', forever)
            code, _, response = await uploading(request, server, body)
            assert (code, await buffered(response)) == (b'200', b'ok')
            assert (response.request_sent, body.events) == (False, CANCELLED)


@SCHEMES
@on_loops
async def test_bytes_between_a_whole_last_response_and_the_end_are_never_delivered(scheme):
    async def script(peer):
        await peer.read_head()
        await peer.send(LAST)
        await turns(30)
        answered.set()
        assert await peer.read(2) == b'ab'
        await peer.send(FORGED)
        peer.writer.close()

    answered = asyncio.Event()
    async with (Server(script, context_of(scheme)) as server,
                pool(get_ssl_context=trusting) as request):
        body = Sending(b'a', answered.wait, b'b', forever)
        code, _, response = await uploading(request, server, body, length=3)
        assert (code, await buffered(response), response.request_sent) == (b'200', b'ok', False)
        assert body.events == CANCELLED


@on_loops
async def test_a_request_or_a_method_may_make_a_response_the_last_and_whole():
    script = EndingBehind(with_length(), end_stream)
    with ThreadServer(script) as server:
        async with pool() as request:
            body = Sending(b'a', forever)
            code, _, response = await uploading(
                request, server, body, headers=((b'connection', b'close'),))
            assert (code, await buffered(response)) == (b'200', b'ok')
            assert (response.request_sent, body.events) == (False, CANCELLED)
            # Of HEAD, the content does not come.
            script.raw = head(b'content-length: 2', b'connection: close')
            code, _, response = await request(
                b'HEAD', server.url, headers=of_length(2), body=Sending(b'a', forever))
            assert (code, await buffered(response)) == (b'200', b'')
            assert not response.request_sent


@SCHEMES
@on_loops
async def test_after_a_wanted_switch_of_protocols_the_sending_goes_on(scheme):
    """What follows is not of HTTP, so its end tells nothing of the request."""
    async def script(peer):
        await peer.read_head()
        await peer.send(SWITCHING + b'\r\n\r\nhello')
        answered.set()
        assert await peer.read(2) == b'ab'
        await peer.send(b' world')
        peer.writer.close()

    answered = asyncio.Event()
    async with (Server(script, context_of(scheme)) as server,
                pool(get_ssl_context=trusting) as request):
        body = Sending(b'a', answered.wait, functools.partial(turns, 30), b'b')
        code, _, response = await uploading(request, server, body, length=2, headers=UPGRADE)
        assert (code, response.request_sent, body.events) == (b'101', True, SWALLOWED)
        assert await buffered(response) == b'hello world'


@pytest.mark.parametrize('ending', ENDINGS)
@on_loops
async def test_the_end_behind_another_response_below_300_does_not_end_the_sending(ending):
    """A server that does not say that it closes may have ended only what it sends."""
    context, end = ENDINGS[ending]
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def ending_and_telling(sock):
        end(sock)
        loop.call_soon_threadsafe(ended.set)

    script = EndingBehind(OK, ending_and_telling)
    with ThreadServer(script, context and context()) as server:
        # Reuse that is turned off by the client says nothing of the server.
        async with pool(get_ssl_context=trusting, keep_alive_timeout=0) as request:
            body = Sending(b'a', ended.wait, functools.partial(turns, 30), b'b')
            code, _, response = await uploading(request, server, body, length=2)
            assert (code, await buffered(response)) == (b'200', b'ok')
            assert (response.request_sent, body.events) == (True, SWALLOWED)


@pytest.mark.parametrize('headers, chunk', [
    (of_length(1), b'a'), (AS_CHUNKS, b'1\r\na\r\n0\r\n\r\n')], ids=['length', 'coding'])
@SCHEMES
@on_loops
async def test_a_response_ends_no_sending_of_which_all_has_been_sent(scheme, headers, chunk):
    """Its length or its last chunk tells that, although the body has not come to its end."""
    async def script(peer):
        await peer.read_head()
        await peer.read(len(chunk))
        await peer.send(FINAL['413'][3])
        await peer.read_head()
        await peer.send(OK)

    async with Server(script, context_of(scheme)) as server, \
            pool(get_ssl_context=trusting) as request:
        body = Sending(chunk, forever)
        code, _, response = await request(b'PUT', server.url, headers=headers, body=body)
        assert (code, await buffered(response), response.request_sent) == (b'413', b'ok', True)
        assert body.events == CANCELLED
        assert (await get(request, server.url))[2] == b'ok'
    assert len(server.peers) == 1


@SCHEMES
@on_loops
async def test_what_is_read_of_a_response_while_sending_is_bounded(scheme):
    """A server that waits for its response to be taken stops to read, and time passes."""
    sent = 0

    def script(sock):
        nonlocal sent
        receive_head(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sock.sendall(b'HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 10000000\r\n\r\n')
        sock.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            while True:
                sent += sock.send(bytes(1000))
        answered.set()
        sock.settimeout(PATIENCE)
        assert sock.recv(1) == b'b'
        is_over.wait(PATIENCE)

    async def until_answered():
        await until(answered.is_set)

    answered, is_over = threading.Event(), threading.Event()
    size = 30_000 if scheme == 'http' else 10_000
    with ThreadServer(script, context_of(scheme)) as server:
        async with pool(get_ssl_context=trusting, recv_bufsize=size,
                        get_sock=functools.partial(small_sock, size=4096)) as request:
            body = Sending(until_answered, b'b')
            code, _, response = await uploading(request, server, body, length=1)
            assert (code, response.request_sent) == (b'200', True)
            # What one read may give, and what the kernel and TLS hold.
            assert size <= sent < 1_000_000
            assert len(await anext(response)) <= size
            await response.aclose()
            is_over.set()


@SCHEMES
@on_loops
async def test_a_body_below_300_that_is_malformed_ends_the_sending(scheme):
    raw = chunked(b'1\r\no\r\nx\r\n')
    async with (early_server(scheme, ([raw], True)) as server,
                pool(get_ssl_context=trusting) as request):
        body = Sending(b'a', forever)
        await failed(
            uploading(request, server, body), HttpDataError, ValueError,
            at(server, 'reading the response body: bad chunk-size line: expected CRLF after the '
               "chunk, 1 to 16 hex digits, an optional extension and CRLF, got b'\\r\\nx\\r\\n'"))
        assert body.events == CANCELLED


# Why a request is not sent whole after a response below 300: how the error begins, and its cause.
UNSENT = {
    'a reset': ('sending the request: ', (ConnectionResetError, ssl.SSLEOFError)),
    'the server stops reading': ('sending the request: TimeoutError: socket_timeout, 0.3 seconds, '
                                 'passed' + AFTER_HEAD, (TimeoutError,)),
    'the body fails': ('the request body: OSError: of the disk', (OSError,)),
}


@SCHEMES
@on_loops
async def test_a_connection_that_is_reset_does_no_harm_to_another(scheme):
    """Of one thread, TLS connections have the queue of OpenSSL's errors in common."""
    def script(sock):
        data = b''
        while b'\r\n\r\n' not in data:
            data += sock.recv(65536)
        if data.startswith(b'PUT /kept '):
            is_begun.set()
            assert is_reset.wait(PATIENCE)
            left = len(content) - len(data.partition(b'\r\n\r\n')[2])
            while left:
                left -= len(sock.recv(2 ** 20))
            sock.sendall(OK)
            receive_end(sock)
        else:
            assert is_begun.wait(PATIENCE)
            # Once it has come, nothing is read beside the sending, so it is that which fails.
            sock.sendall(OK)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            socket.socket.close(sock)

    def upload(path):
        return request(b'PUT', server.url + path, headers=of_length(len(content)),
                       body=streamed(content))

    content = bytes(4_000_000)
    is_begun, is_reset = threading.Event(), threading.Event()
    # The server is in threads of its own, where its calls of OpenSSL do not see ours.
    with ThreadServer(script, context_of(scheme)) as server:
        async with pool(get_ssl_context=trusting, get_sock=small_sock) as request:
            kept = asyncio.create_task(upload('kept'))
            error = await failed(upload('reset'), HttpConnectionClosedError, None)
            assert str(error).startswith(at(server, 'sending the request: '))
            is_reset.set()
            code, _, body = await kept
            assert (code, await buffered(body)) == (b'200', b'ok')


@pytest.mark.parametrize('last', [False, True], ids=['another may follow', 'the last'])
@SCHEMES
@on_loops_at_once
async def test_below_300_a_request_that_is_not_sent_whole_is_an_error(scheme, last):
    raw = LASTS['a length'][2] if last else OK
    peers = []

    async def script(peer):
        name = (await peer.read_head()).split()[1][1:].decode().replace('_', ' ')
        # The loop does not hold a transport that does not read: it would be collected, and close.
        peers.append(peer)
        peer.writer.transport.pause_reading()
        await peer.send(raw)
        await turns(30)
        answered[name].set()
        if name == 'a reset':
            peer.reset()
        else:
            await forever()

    async def failing(name):
        yield b'a'
        await answered[name].wait()
        await turns(10)
        raise OSError('of the disk')

    async def long(name):
        while True:
            yield bytes(50_000)

    async def check(name):
        begin, causes = UNSENT[name]
        body = failing if name == 'the body fails' else long
        with row(name):
            async with pool(get_ssl_context=trusting, get_sock=small_sock,
                            socket_timeout=0.3) as request:
                error = await failed(
                    uploading(request, server, functools.partial(body, name),
                              name.replace(' ', '_')),
                    HttpConnectionClosedError if name == 'a reset' else HttpDataError, None)
                assert isinstance(error.__cause__, causes)
                assert str(error).startswith(at(server, begin))
                assert error.response_started

    # Behind a whole response that is the last, a reset is an end.
    names = [name for name in UNSENT if not (name == 'a reset' and last)]
    answered = {name: asyncio.Event() for name in names}
    async with Server(script, context_of(scheme)) as server:
        await asyncio.gather(*map(check, names))


# A server that has sent some bytes and is gone when the next chunk is sent: what it has sent,
# and the code and body of the response, or None for the error of the sending.
HEARD = {
    'a response below 300': (OK, None),
    'a response of 300 or above': (FINAL['413'][3], (b'413', b'ok')),
    'a chunked response': (FINAL['chunked'][3], (b'429', b'ok')),
    'a long response': (
        b'HTTP/1.1 403 Forbidden\r\ncontent-length: 50000\r\n\r\n' + bytes(50_000),
        (b'403', bytes(50_000))),
    'a response after interim ones': (CONTINUE + HINTS + FINAL['413'][3], (b'413', b'ok')),
    'nothing': (b'', None),
    'a part of a head': (b'HTTP/1.1 413 Content Too Large\r\ncont', None),
    'interim responses': (CONTINUE + HINTS, None),
    'rubbish': (b'\0\0\n', None),
}

class Leaving:
    """A script that sends something after the head and leaves. The loop of the client may wait
    for it, in the body of the request, so that what has come is seen only when sending fails."""

    def __init__(self, raw, leave):
        self.raw = raw
        self.leave = leave
        self.is_gone = threading.Event()
        self.is_closed = False

    def __call__(self, sock):
        data = sock.recv(1)
        while not data.endswith((b'\r\n\r\na', b'\r\n\r\n')):
            data += sock.recv(65536)
        if data.startswith(b'GET'):
            sock.sendall(OK)
            return
        sock.sendall(self.raw)
        self.leave(sock)
        self.is_gone.set()

    async def body(self):
        try:
            yield b'a'
            assert self.is_gone.wait(PATIENCE)
            while True:
                yield b'b'
        finally:
            self.is_closed = True


def leave_with_reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    sock.close()


def leave_with_end(sock):
    sock.close()


@pytest.mark.parametrize('leave', [leave_with_reset, leave_with_end])
@on_loops
async def test_what_the_server_said_before_the_sending_failed_is_the_response(leave):
    for name, (raw, expected) in HEARD.items():
        script = Leaving(raw, leave)
        with row(name), ThreadServer(script) as server:
            async with pool() as request:
                upload = request(b'PUT', server.url, headers=of_length(10 ** 6), body=script.body)
                if expected is None:
                    error = await failed(upload, HttpConnectionClosedError, None)
                    assert type(error.__cause__) in (BrokenPipeError, ConnectionResetError)
                    assert str(error).startswith(at(server, 'sending the request: '))
                    assert error.response_started == bool(raw)
                else:
                    code, _, response = await upload
                    assert (code, await buffered(response)) == expected
                    assert not response.request_sent
                assert script.is_closed
                assert (await get(request, server.url))[2] == b'ok'


@on_loops
async def test_what_the_server_said_over_tls_before_the_sending_failed_is_the_response():
    for name in ('a response of 300 or above', 'a chunked response'):
        raw, expected = HEARD[name]
        script = Leaving(raw, leave_with_end)
        with row(name), ThreadServer(script, server_context()) as server:
            async with pool(get_ssl_context=trusting) as request:
                code, _, response = await request(
                    b'PUT', server.url, headers=of_length(10 ** 6), body=script.body)
                assert (code, await buffered(response)) == expected


@on_loops
async def test_a_response_is_not_returned_in_place_of_an_error_of_the_body_or_a_cancellation():
    """It does not tell why the sending ended."""
    async def script(peer):
        await peer.read_head()
        peer.writer.transport.pause_reading()
        await peer.send(OK)
        answered.set()
        await forever()

    async def failing():
        yield b'a'
        await answered.wait()
        await turns(5)
        raise OSError('of the disk')

    answered = asyncio.Event()
    async with Server(script) as server, pool(get_sock=small_sock) as request:
        error = await failed(
            uploading(request, server, failing), HttpDataError, OSError,
            peer_prefix(server, 'PUT') + ', the request body: OSError: of the disk')
        assert error.response_started
        answered.clear()
        task = asyncio.create_task(uploading(request, server, streamed(BLOCKING)))
        await answered.wait()
        await turns(5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@on_loops
async def test_what_came_before_a_byte_of_the_request_was_sent_is_not_its_response():
    """It came over an idle connection, after that was looked at."""
    def script(sock):
        receive_head(sock)
        sock.sendall(OK)
        if server.socks.index(sock) == 0:
            go_on.wait(PATIENCE)
            sock.sendall(FORGED)
            leave_with_reset(sock)
            is_gone.set()

    async def body():
        go_on.set()
        assert is_gone.wait(PATIENCE)
        yield b'a'

    go_on, is_gone = threading.Event(), threading.Event()
    with ThreadServer(script) as server:
        async with pool() as request:
            await get(request, server.url)
            error = await failed(
                request(b'PUT', server.url, headers=of_length(1), body=body),
                HttpConnectionError, None)
            assert type(error.__cause__) in (BrokenPipeError, ConnectionResetError)
            assert str(error).startswith(at(server, 'sending the request: '))
            assert error.reused


class Blocked:
    """The server's end of a connection that has no room for anything more."""

    async def get_connection(self, *_):
        ours, self.theirs = socket.socketpair()
        ours.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                ours.send(bytes(65536))
        return ours


async def with_a_short_time():
    async with asyncio.timeout(0.01):
        yield BLOCKING


@on_loops
async def test_a_time_out_of_the_body_tells_if_something_of_the_request_was_sent():
    text = 'sending the request: TimeoutError: a time-out in the body passed '
    with deaf_server() as server:
        async with pool(get_sock=small_sock) as request:
            error = await failed(
                uploading(request, server, with_a_short_time, '', len(BLOCKING)), HttpDataError,
                TimeoutError)
            assert str(error).endswith(f', {text}while the request was being sent')
    blocked = Blocked()
    async with pool(get_connection=blocked.get_connection) as request:
        error = await failed(
            request(b'PUT', 'http://a.test/', headers=of_length(len(BLOCKING)),
                    body=with_a_short_time), HttpConnectionError, TimeoutError)
        assert str(error).endswith(f', {text}before the head was sent')
        blocked.theirs.close()


@pytest.mark.parametrize('ending', ENDINGS)
@on_loops
async def test_an_end_of_the_connection_is_told_with_the_phase_that_it_came_in(ending):
    """Whether a byte of the response has come, or none. Over TLS it may be a truncation."""
    context, end = ENDINGS[ending]

    def get(request, server):
        return request(b'GET', server.url)

    def waiting(request, server):
        return uploading(request, server, Sending(b'a', forever))

    def blocked(request, server):
        return uploading(request, server, Sending(BLOCKING))

    def sent(request, server):
        return uploading(request, server, streamed(b'a'), length=1)

    def expecting(request, server):
        return uploading(request, server, Sending(b'a'), headers=EXPECT)

    phases = {
        get: ('GET', 'reading the response head', 'it'),
        waiting: ('PUT', 'waiting for the request body', 'the response head'),
        blocked: ('PUT', 'sending the request', 'the response head'),
        sent: ('PUT', 'reading the response head', 'it'),
        expecting: ('PUT', 'waiting for 100 Continue', 'it'),
    }
    script = EndingBehind(b'', end, is_read=False, answers_get=False)
    with ThreadServer(script, context and context()) as server:
        async with pool(get_ssl_context=trusting, get_sock=small_sock) as request:
            for raw in (b'', b'HTTP/1.1 2', HINTS, HINTS + b'HTTP/1.1 2'):
                partial = raw.removeprefix(HINTS)
                for make, (method, phase, what) in phases.items():
                    with row((phase, raw)):
                        script.raw = raw
                        script.is_over.clear()
                        error = await failed(
                            make(request, server), HttpConnectionClosedError, None)
                        script.is_over.set()
                        expected = at(server, phase, method) + (
                            ': SSLEOFError: ' if ending == 'TLS, without' else
                            f': the peer closed the connection, after '
                            f'{partial or f"no byte of {what}"}'
                            f'{"" if raw or context else MAY_BE_TLS}')
                        assert str(error).startswith(expected)
                        assert ending == 'TLS, without' or str(error) == expected
                        assert error.response_started == bool(raw)


@on_loops
async def test_the_hint_that_a_port_may_be_for_https_is_for_an_origin_that_never_answered():
    """Neither if it answered over another connection, nor if that was long ago."""
    async def script(peer):
        head = await peer.read_head()
        if head.startswith(b'GET /answer'):
            await peer.send(LAST)

    async def upload(request):
        return await failed(
            uploading(request, server, Sending(forever)), HttpConnectionClosedError, EOFError)

    async with Server(script) as server:
        for is_answered in (False, True):
            async with pool() as request:
                if is_answered:
                    await get(request, server.url + 'answer')
                hint = '' if is_answered else MAY_BE_TLS
                await failed(
                    get(request, server.url), HttpConnectionClosedError, EOFError,
                    at(server, 'reading the response head: the peer closed the connection, after '
                       f'no byte of it{hint}', 'GET'))
                assert str(await upload(request)) == at(
                    server, 'waiting for the request body: the peer closed the connection, after '
                    f'no byte of the response head{hint}')


EARLIER = {
    'nothing': b'', 'interim': CONTINUE + HINTS, 'final': OK,
    'part': HINTS + b'HTTP/1.1 200 OK\r\ncont',
}


@on_loops_at_once
async def test_no_time_runs_while_the_body_waits_whatever_has_come_meanwhile():
    async def script(peer):
        raw = EARLIER[(await peer.read_head()).split()[1][1:].decode()]
        await peer.send(*[raw] * bool(raw))
        assert await peer.read(2) == b'ab'
        if raw != OK:
            await peer.send(OK[len(raw) - len(HINTS):] if raw.endswith(b'cont') else OK)

    async def a_while():
        await asyncio.sleep(0.35)

    async def check(name):
        with row(name):
            body = Sending(b'a', a_while, b'b', a_while)
            code, _, response = await uploading(request, server, body, name, 2)
            assert (code, await buffered(response)) == (b'200', b'ok')

    async with Server(script) as server, pool(socket_timeout=0.15) as request:
        await asyncio.gather(*[check(name) for name in EARLIER])


@on_loops_at_once
async def test_the_time_of_the_head_begins_with_the_last_byte_sent():
    async def script(peer):
        await peer.read_head()
        await peer.send(HINTS)
        await peer.closed()

    async def body():
        await asyncio.sleep(0.3)
        yield b'a'
        ended.append(loop.time())

    loop = asyncio.get_running_loop()
    ended = []
    async with Server(script) as server, pool(socket_timeout=0.2) as request:
        await failed(
            request(b'PUT', server.url, headers=of_length(1), body=body),
            HttpDataError, TimeoutError,
            at(server, 'reading the response head: TimeoutError: socket_timeout, 0.2 seconds, '
               'passed'))
        assert loop.time() - ended[0] > 0.18  # the clocks of the loops are coarse


@SCHEMES
@on_loops_at_once
async def test_watching_for_an_early_response_uses_no_cpu(scheme):
    """Whatever has come, and whatever the client waits for."""
    large = b'HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b' % (
        len(BLOCKING), BLOCKING)
    responses = (b'', CONTINUE, CONTINUE + HINTS + b'HTTP/1.1 2', OK, OK[:-1], large)
    # What is sent before the body waits, and if the server reads it.
    bodies = (((), False), ((b'a',), False), ((bytes(1_000_000),), True), ((BLOCKING,), False))
    cases = [(response, *body) for response in responses for body in bodies]
    written = set()
    waiting = set()
    to_wait = {number for number, case in enumerate(cases) if BLOCKING not in case[1]}

    async def script(peer):
        number = int((await peer.read_head()).split()[1][1:])
        response, _, reads = cases[number]
        if not reads:
            peer.writer.transport.pause_reading()
        peer.writer.write(response)
        await turns(100)
        written.add(number)
        await (peer.closed() if reads else forever())

    async def upload(number):
        async def wait():
            waiting.add(number)
            await forever()

        async with pool(get_ssl_context=trusting, get_sock=small_sock) as request:
            await uploading(request, server, Sending(*cases[number][1], wait), number)

    async with Server(script, context_of(scheme)) as server:
        tasks = [asyncio.create_task(upload(number)) for number in range(len(cases))]
        await until(lambda: len(written) == len(cases) and waiting == to_wait)
        await asyncio.sleep(0.05)
        cpu = time.thread_time()
        await asyncio.sleep(0.3)
        assert time.thread_time() - cpu < 0.05
        for task in tasks:
            assert not task.done()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@on_loops
async def test_a_request_that_is_closed_by_hand_while_it_is_blocked_closes_its_connection():
    sock = None

    def get_sock(family):
        nonlocal sock
        sock = small_sock(family)
        return sock

    with deaf_server() as server:
        async with pool(get_sock=get_sock) as request:
            coroutine = request(b'PUT', server.url, body=streamed(LARGE),
                                headers=of_length(len(LARGE)))
            coroutine.send(None)
            # The kernel has taken what it takes.
            with pytest.raises(BlockingIOError):
                sock.send(b'-')
            coroutine.close()
            assert sock.fileno() == -1


@pytest.mark.parametrize('is_blocked', [True, False], ids=['sending', 'waiting for a chunk'])
@pytest.mark.parametrize('new_loop', LOOPS.values(), ids=LOOPS)
def test_a_request_that_is_dropped_after_its_loop_was_closed_closes_its_connection(
        new_loop, is_blocked):
    async def body():
        if not is_blocked:
            await asyncio.sleep(60)
        yield LARGE

    def get_sock(family):
        socks.append(small_sock(family))
        return socks[-1]

    async def begin():
        request, _ = Pool(get_sock=get_sock)
        coroutine = request(b'PUT', server.url, body=body, headers=of_length(len(LARGE)))
        coroutine.send(None)
        return coroutine

    socks = []
    with deaf_server() as server, contextlib.closing(new_loop()) as loop:
        coroutine = loop.run_until_complete(begin())
        loop.close()
        del coroutine
        gc.collect()
        assert [sock.fileno() for sock in socks] == [-1]


# --------------------------------------------------------------------- expect: 100-continue

EXPECT = ((b'expect', b'100-continue'),)


class Called:
    """A body that keeps when it was called."""

    def __init__(self, *chunks):
        self.chunks = chunks
        self.times = []

    def __call__(self):
        self.times.append(asyncio.get_running_loop().time())
        return yielding(*self.chunks)


CONTINUING = {
    'at once': [CONTINUE],
    'in HTTP/1.0': [b'HTTP/1.0 100 \r\n\r\n'],
    'with fields': [b'HTTP/1.1 100 Continue\r\na: b\r\nconnection: close\r\n\r\n'],
    'byte by byte': cut_into_bytes(CONTINUE),
    'after another': [HINTS, CONTINUE],
    'after another, in one read': [HINTS + CONTINUE],
    'before another, in one read': [CONTINUE + HINTS],
    'twice': [CONTINUE + CONTINUE],
    'with a part of the final response': [CONTINUE + OK[:9]],
}


@SCHEMES
@on_loops
async def test_a_body_is_not_called_before_100_continue(scheme):
    async def script(peer):
        number = int((await peer.read_head()).split()[1][1:])
        name = names[number]
        await turns(20)
        assert bodies[number].times == []
        for piece in CONTINUING[name][:-1]:
            await peer.send(piece)
            assert bodies[number].times == []
        await peer.send(CONTINUING[name][-1])
        assert await peer.read(2) == b'ab'
        await peer.send(OK[9:] if 'final' in name else OK)
        assert (await peer.read_head()).startswith(b'GET')
        await peer.send(OK)

    async def check(number):
        async with pool(get_ssl_context=trusting) as request:
            with row(names[number]):
                started = loop.time()
                code, _, response = await uploading(
                    request, server, bodies[number], number, 2, headers=EXPECT)
                assert (code, await buffered(response)) == (b'200', b'ok')
                assert bodies[number].times[0] < started + 0.9
                assert (await get(request, server.url))[2] == b'ok'

    loop = asyncio.get_running_loop()
    names = list(CONTINUING)
    bodies = [Called(b'a', None, b'b') for _ in names]
    async with Server(script, context_of(scheme)) as server:
        await asyncio.gather(*map(check, range(len(names))))
        assert len(server.peers) == len(names)


@on_loops_at_once
async def test_a_body_waits_for_100_continue_for_at_most_a_second_or_socket_timeout():
    # What comes before the body, and after it; and if socket_timeout is short.
    cases = {
        'nothing': (b'', OK, False),
        'nothing, in a short time': (b'', OK, True),
        'another interim response': (HINTS, OK, False),
        'it is late': (b'', CONTINUE + OK, False),
        'a part of it': (CONTINUE[:-1], CONTINUE[-1:] + OK, False),
        'a part of it, in a short time': (CONTINUE[:-1], CONTINUE[-1:] + OK, True),
        'a part of the final response': (OK[:-5], OK[-5:], False),
    }

    async def script(peer):
        name = names[int((await peer.read_head()).split()[1][1:])]
        before, after, _ = cases[name]
        await peer.send(*[before] * bool(before))
        assert await peer.read(2) == b'ab'
        await peer.send(after)
        assert (await peer.read_head()).startswith(b'GET')
        await peer.send(OK)

    async def check(server, number, name):
        is_short = cases[name][2]
        async with pool(get_ssl_context=trusting,
                        socket_timeout=0.2 if is_short else 10) as request:
            with row(f'{name}, {server.url}'):
                body = Called(b'ab')
                started = loop.time()
                code, _, response = await uploading(
                    request, server, body, number, 2, headers=EXPECT)
                assert (code, await buffered(response)) == (b'200', b'ok')
                waited = body.times[0] - started
                assert 0.18 < waited < 0.8 if is_short else 0.8 < waited < 4
                assert (await get(request, server.url))[2] == b'ok'

    loop = asyncio.get_running_loop()
    names = list(cases)
    async with Server(script) as plain, Server(script, server_context()) as tls:
        await asyncio.gather(*[check(server, number, name) for server in (plain, tls)
                               for number, name in enumerate(names)])
        assert len(plain.peers) == len(tls.peers) == len(names)


@SCHEMES
@on_loops
async def test_a_body_is_never_called_when_a_final_response_comes_in_place_of_100_continue(scheme):
    cases = {
        '417': (b'417', b'ok', [with_length(start=b'HTTP/1.1 417 Expectation Failed')]),
        '401': (b'401', b'ok', [with_length(start=b'HTTP/1.1 401 Unauthorized')]),
        '200': (b'200', b'ok', [OK]),
        '204': (b'204', b'', [b'HTTP/1.1 204 No Content\r\n\r\n']),
        'byte by byte': (b'200', b'ok', cut_into_bytes(OK)),
        'its body later': (b'200', b'ok', [OK[:-2], b'o', b'k']),
        'after another interim response': (b'200', b'ok', [HINTS + OK]),
        'after 100, in one read': (b'403', b'ok', [
            CONTINUE + with_length(start=b'HTTP/1.1 403 Forbidden')]),
        'chunked': (b'429', b'ok', [FINAL['chunked'][3]]),
    }
    ends, gets = {}, []

    async def script(peer):
        head = await peer.read_head()
        if head.startswith(b'GET'):
            gets.append(peer.index)
            await peer.send(OK)
            return
        name = names[int(head.split()[1][1:])]
        await peer.send(*cases[name][2])
        ends[name] = await peer.closed()

    async def check(number, name):
        code, content, _ = cases[name]
        body = Called(b'ab')
        async with pool(get_ssl_context=trusting) as request:
            with row(name):
                response = await uploading(request, server, body, number, 2, headers=EXPECT)
                assert response[0] == code
                assert await buffered(response[2]) == content
                assert body.times == []
                await until(lambda: ends.get(name) == b'')
                assert (await get(request, server.url))[2] == b'ok'

    names = list(cases)
    async with Server(script, context_of(scheme)) as server:
        await asyncio.gather(*itertools.starmap(check, enumerate(names)))
    assert len(gets) == len(names)


EXPECTING = {
    'upper case': ((b'EXPECT', b'100-CONTINUE'),),
    'mixed case': ((b'Expect', b'100-Continue'),),
    'white space': ((b'expect', b' \t100-continue '),),
    'first of a list': ((b'expect', b'100-continue, a=b'),),
    'before a tab': ((b'expect', b'100-continue\t, a=b'),),
    'last of a list': ((b'expect', b'a ,\t100-continue'),),
    'the second field': ((b'expect', b'a'), (b'expect', b'100-continue')),
    'the first field': ((b'expect', b'100-continue'), (b'expect', b'a')),
    'with a chunked body': ((b'expect', b'100-continue'), (b'transfer-encoding', b'chunked')),
}
NOT_EXPECTING = {
    'another': ((b'expect', b'a'),),
    'longer': ((b'expect', b'100-continued'),),
    'longer at the start': ((b'expect', b'a-100-continue'),),
    'empty': ((b'expect', b''),),
    'another field': ((b'x-expect', b'100-continue'),),
}


@on_loops
async def test_the_field_expect_is_a_list_in_any_case():
    async def script(peer):
        head = await peer.read_head()
        came.append(bool(body.times))
        await peer.send(CONTINUE)
        await peer.reader.readuntil(b'b')
        assert b'100-continue' in head.lower() or b'\r\nexpect: a' in head or b'expect: \r' in head
        await peer.send(OK)

    for is_expecting, forms in ((True, EXPECTING), (False, NOT_EXPECTING)):
        for name, headers in forms.items():
            is_coded = 'chunked' in name
            came, body = [], Called(b'2\r\nab\r\n0\r\n\r\n' if is_coded else b'ab')
            length = () if is_coded else of_length(2)
            async with Server(script) as server, pool() as request:
                with row(name):
                    code, _, response = await request(
                        b'PUT', server.url, headers=(*headers, *length), body=body)
                    assert (code, await buffered(response)) == (b'200', b'ok')
                    assert came == [not is_expecting]


@on_loops
async def test_what_fails_while_100_continue_is_waited_for():
    cases = {
        'an end': (b'', 'end', HttpConnectionClosedError, EOFError,
                   'the peer closed the connection, after no byte of it' + MAY_BE_TLS),
        'an end in the head': (
            b'HTTP/1.1 1', 'end', HttpConnectionClosedError, EOFError,
            "the peer closed the connection, after b'HTTP/1.1 1'"),
        'a reset': (b'', 'reset', HttpConnectionClosedError, ConnectionResetError,
                    'ConnectionResetError: [Errno 104] Connection reset by peer' + MAY_BE_TLS),
        'rubbish': (b'\0\n', 'wait', HttpDataError, ValueError,
                    'bad status line: expected HTTP/1.x, a space, three digits and a '
                    "reason, got b'\\x00'"),
        'a long head': (b'HTTP/1.1 100 \r\na: ' + b'b' * 200, 'wait', HttpHeaderTooLong, None,
                        'the head is longer than max_header_length, 200 bytes'),
        'many interim responses': (
            HINTS * 101, 'wait', HttpDataError, ValueError,
            'got more than 100 interim responses'),
    }

    async def script(peer):
        raw, act, *_ = cases[names[int((await peer.read_head()).split()[1][1:])]]
        await peer.send(*[raw] * bool(raw))
        if act == 'reset':
            peer.reset()
            return
        if act == 'end':
            peer.writer.write_eof()
        assert await peer.closed() == b''

    names = list(cases)
    async with Server(script) as server, pool(max_header_length=200) as request:
        for number, (name, (raw, _, kind, cause, text)) in enumerate(cases.items()):
            body = Called(b'ab')
            with row(name):
                error = await failed(
                    uploading(request, server, body, number, 2, headers=EXPECT), kind, cause,
                    at(server, f'waiting for 100 Continue: {text}'))
                assert (error.reused, error.response_started) == (False, bool(raw))
                assert body.times == []


@SCHEMES
@pytest.mark.parametrize('limit', ['cancel', 'asyncio.timeout'])
@on_loops_at_once
async def test_a_request_may_be_cancelled_while_it_waits_for_100_continue(scheme, limit):
    async def script(peer):
        await peer.read_head()
        await peer.send(HINTS)
        has_come.set()
        ends.append(await peer.closed())

    async def upload():
        async with asyncio.timeout(None if limit == 'cancel' else 0.1):
            await uploading(request, server, body, length=2, headers=EXPECT)

    has_come, ends, body = asyncio.Event(), [], Called(b'ab')
    async with (Server(script, context_of(scheme)) as server,
                pool(get_ssl_context=trusting) as request):
        task = asyncio.create_task(upload())
        await has_come.wait()
        if limit == 'cancel':
            task.cancel()
        [error] = await asyncio.gather(task, return_exceptions=True)
        assert type(error) is (asyncio.CancelledError if limit == 'cancel' else TimeoutError)
        assert task.cancelling() == (limit == 'cancel')
        await until(lambda: ends == [b''])
    assert body.times == []


@on_loops
async def test_a_body_that_is_not_ready_after_100_continue_is_sent_when_it_is():
    async def script(peer):
        await peer.read_head()
        await peer.send(CONTINUE)
        assert await peer.read(1) == b'a'
        await peer.send(OK)

    async def body():
        await asyncio.sleep(0)
        yield b'a'

    async with Server(script) as server, pool() as request:
        _, _, response = await request(
            b'PUT', server.url, headers=((b'expect', b'100-continue'), *of_length(1)), body=body)
        assert await buffered(response) == b'ok'


# -------------------------------------------------------------------------- get_connection


async def socket_to(family, address):
    """A new socket, connected to the address."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


def through_unix_socket(path):
    async def get_connection(scheme, host, port):
        return await socket_to(socket.AF_UNIX, path)

    return get_connection


class Unwanted(Exception):
    pass


def unwanted(*args, **kwargs):
    raise AssertionError('it must not be called')


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


class Streams:
    """Answers the requests that come over connections of any kind."""

    def __init__(self, context=None):
        self.context = context
        self.heads = []
        self.connections = []  # the index of the connection of each request
        self.writers = []
        self.ends = 0

    async def __call__(self, reader, writer):
        index = len(self.writers)
        self.writers.append(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                self.heads.append(await reader.readuntil(b'\r\n\r\n'))
                self.connections.append(index)
                writer.write(OK)
        self.ends += 1
        writer.close()

    async def accept(self, sock):
        """Serve a socket that is connected already."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader, self)
        await loop.connect_accepted_socket(lambda: protocol, sock, ssl=self.context)

    async def all_ended(self, but=0):
        await until(lambda: self.ends == len(self.writers) - but)


@contextlib.asynccontextmanager
async def tcp_streams(streams, tmp_path):
    async def get_connection(scheme, host, port):
        return await socket_to(socket.AF_INET, server.sockets[0].getsockname())

    server = await asyncio.start_server(streams, '127.0.0.1', 0, ssl=streams.context)
    address, port = server.sockets[0].getsockname()
    yield get_connection, f' (peer {address}:{port})'
    server.close()


@contextlib.asynccontextmanager
async def ipv6_streams(streams, tmp_path):
    async def get_connection(scheme, host, port):
        return await socket_to(socket.AF_INET6, server.sockets[0].getsockname())

    server = await asyncio.start_server(streams, '::1', 0, ssl=streams.context)
    yield get_connection, f' (peer [::1]:{server.sockets[0].getsockname()[1]})'
    server.close()


@contextlib.asynccontextmanager
async def unix_streams(streams, tmp_path):
    path = str(tmp_path / 's')
    server = await asyncio.start_unix_server(streams, path, ssl=streams.context)
    yield through_unix_socket(path), f' (peer {path})'
    server.close()


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


@on_loops_at_once
async def test_socket_timeout_is_for_get_connection_and_the_handshake_together():
    async def get_connection(scheme, host, port):
        await asyncio.sleep(0.9)
        ours, theirs = socket.socketpair()
        silent.append(theirs)
        return ours

    silent = []
    started = time.monotonic()
    async with pool(get_connection=get_connection, get_ssl_context=trusting,
                    socket_timeout=1) as request:
        await failed(
            request(b'GET', 'https://name.test/'), HttpTlsError, TimeoutError,
            'GET https://name.test:443: the TLS handshake failed: '
            'TimeoutError: socket_timeout, 1 seconds, passed')
    assert time.monotonic() - started < 1.7
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


# ----------------------------------------------------------------- the recipes of the README

HERE = pathlib.Path(__file__).parent
README = (HERE / 'README.md').read_text(encoding='utf-8')
README_BLOCKS = re.findall(r'(?<=^```python\n).*?(?=^```$)', README, re.MULTILINE | re.DOTALL)


def recipe(name):
    """The README's block that defines the function, as a module. It is not run."""
    [block] = [block for block in README_BLOCKS if f'def {name}(' in block]
    module = types.ModuleType(name)
    definitions = block.removesuffix('asyncio.run(main())\n')
    assert definitions != block
    exec(compile(definitions, 'README.md', 'exec'), vars(module))
    return module


async def copy(reader, writer):
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def tunnel(reader, writer, port, first=b''):
    """Pass on what comes from each side to the other, after some bytes of the proxy's own."""
    server_reader, server_writer = await asyncio.open_connection('127.0.0.1', port)
    writer.write(first)
    await asyncio.gather(copy(reader, server_writer), copy(server_reader, writer))


class Proxy:
    """An HTTP proxy: whatever it is asked for is a port of its own machine."""

    def __init__(self, port, *responses):
        self.port = port
        self.responses = responses  # in place of a tunnel
        self.heads = []
        self.ends = 0

    async def __call__(self, reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            self.heads.append(await reader.readuntil(b'\r\n\r\n'))
            if self.responses:
                writer.write(self.responses[len(self.heads) - 1])
                assert await reader.read() == b''
            else:
                await tunnel(reader, writer, self.port,
                             b'HTTP/1.1 100 Continue\r\n\r\n'
                             b'HTTP/1.1 200 Connection established\r\ncontent-length: 5\r\n\r\n')
        self.ends += 1
        writer.close()


@contextlib.asynccontextmanager
async def listening(script, host='127.0.0.1'):
    """A server of two streams, until its connections have ended."""
    started = []

    async def serve(reader, writer):
        started.append(asyncio.current_task())
        await script(reader, writer)

    server = await asyncio.start_server(serve, host, 0)
    yield server.sockets[0].getsockname()
    server.close()
    await asyncio.gather(*started)


@SCHEMES
@on_loops
async def test_recipe_through_a_unix_socket(scheme, tmp_path):
    streams = Streams(context_of(scheme))
    async with unix_streams(streams, tmp_path) as (get_connection, _):
        async with pool(get_connection=get_connection, get_ssl_context=trusting) as request:
            for _ in range(2):
                assert (await get(request, f'{scheme}://name.test/'))[2] == b'ok'
        await streams.all_ended()
    assert streams.connections == [0, 0]
    path = str(tmp_path / 'nothing')
    async with pool(get_connection=through_unix_socket(path)) as request:
        error = await failed(
            request(b'GET', 'http://name.test/'), HttpConnectionError, FileNotFoundError)
        assert str(error).startswith('GET http://name.test:80: get_connection failed: '
                                     'FileNotFoundError: [Errno 2]')


def url_of_proxy(address, user=''):
    host, port = address[:2]
    return f'http://{user}[{host}]:{port}' if ':' in host else f'http://{user}{host}:{port}'


@SCHEMES
@on_loops
async def test_recipe_through_an_http_proxy(scheme):
    through_http_proxy = recipe('through_http_proxy').through_http_proxy
    fields = ((b'proxy-authorization', b'Bearer a'),)
    async with Server(Answering(OK), context_of(scheme)) as server:
        proxy = Proxy(server.port)
        async with listening(proxy) as address:
            async with pool(get_connection=through_http_proxy(url_of_proxy(address), fields),
                            get_ssl_context=trusting, get_dns_resolver=unwanted) as request:
                for host in ('name.test', '127.0.0.1:81', 'name.test'):
                    assert (await get(request, f'{scheme}://{host}/'))[2] == b'ok'
            async with pool(get_connection=through_http_proxy(
                    url_of_proxy(address) + '/')) as request:
                with contextlib.suppress(HttpError):
                    await get(request, f'{scheme}://[2001:DB8::1]/')
    port = 443 if scheme == 'https' else 80
    assert proxy.heads == [
        b'CONNECT name.test:%d HTTP/1.1\r\nhost: name.test:%d\r\n'
        b'proxy-authorization: Bearer a\r\n\r\n' % (port, port),
        b'CONNECT 127.0.0.1:81 HTTP/1.1\r\nhost: 127.0.0.1:81\r\n'
        b'proxy-authorization: Bearer a\r\n\r\n',
        b'CONNECT [2001:db8::1]:%d HTTP/1.1\r\nhost: [2001:db8::1]:%d\r\n\r\n' % (port, port)]


@pytest.mark.parametrize('host, user, sent', [
    ('127.0.0.1', '', None),
    ('127.0.0.1', 'u:p@', b'u:p'),
    ('127.0.0.1', 'u@', b'u:'),
    ('127.0.0.1', ':p@', b':p'),
    ('127.0.0.1', 'u:p:q@', b'u:p:q'),
    ('127.0.0.1', '%C3%A9%40x:%3A%2F%25%20@', 'é@x::/% '.encode()),
    ('::1', '', None),
    ('::1', 'u:p@', b'u:p'),
])
@on_loops
async def test_recipe_an_http_proxy_by_its_url(host, user, sent):
    through_http_proxy = recipe('through_http_proxy').through_http_proxy
    async with Server(Answering(OK)) as server:
        proxy = Proxy(server.port)
        async with listening(proxy, host) as address:
            url = url_of_proxy(address, user)
            async with pool(get_connection=through_http_proxy(url)) as request:
                assert (await get(request, 'http://name.test/'))[2] == b'ok'
    [head] = proxy.heads
    credentials = re.findall(rb'\r\nproxy-authorization: Basic (.*)\r\n', head)
    assert credentials == ([] if sent is None else [base64.b64encode(sent)])
    assert head.count(b'\r\n') == 3 + len(credentials)


@pytest.mark.parametrize('url', [
    '', 'name.test:1', 'https://name.test', 'http://', 'http://u:secret/@name.test',
    'http://u:secret@', 'http://u:secr@et@name.test', 'http://u:secret@name.test:x',
    'http://u:secret@name.test/path', 'http://u:secret@::1', 'http://[::1'])
def test_recipe_an_http_proxy_whose_url_is_none(url):
    with pytest.raises(ValueError, match='must be like http://user:password@192.0.2.1') as caught:
        recipe('through_http_proxy').through_http_proxy(url)
    assert 'secr' not in str(caught.value)


@on_loops
async def test_recipe_through_an_http_proxy_that_refuses():
    module = recipe('through_http_proxy')
    through_http_proxy, ProxyError = module.through_http_proxy, module.ProxyError
    said = 'GET https://name.test:443: get_connection failed: ProxyError: the proxy answered '
    refusal = (b'HTTP/1.1 407 Proxy Authentication Required\r\n'
               b'Proxy-Authenticate: Basic realm="a: b"\r\ncontent-length: 0\r\n\r\n')
    answers = {
        b'HTTP/1.0 502\r\n\r\n<p>No such\x1b host</p>\r\nmore':
            "b'HTTP/1.0 502': b'<p>No such\\x1b host</p>'",
        b'HTTP/1.1 403 No\ncontent-length: 9\n\n\n <p>\nb': "b'HTTP/1.1 403 No': b'<p>'",
        b'HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n':
            "b'HTTP/1.1 403 No': b'abc'",
        b'HTTP/1.1 503 \r\n\r\n' + b'a' * 20_000: f"b'HTTP/1.1 503': {b'a' * 200!r}",
        b'SSH-2.0-a\r\n\r\n\r\n': "b'SSH-2.0-a'",
        b'HTTP/1.1 2000\r\ncontent-length: 0\r\n\r\n': "b'HTTP/1.1 2000'",
        b'HTTP/2 200\r\ncontent-length: 0\r\n\r\n': "b'HTTP/2 200'",
        bytes(20_000): repr(bytes(60)),
    }
    proxy = Proxy(0, refusal, *answers)
    async with listening(proxy) as address:
        url = url_of_proxy(address, 'user:secret@')
        async with pool(get_connection=through_http_proxy(url)) as request:
            error = await failed(
                request(b'GET', 'https://name.test/'), HttpConnectionError, ProxyError,
                said + "b'HTTP/1.1 407 Proxy Authentication Required'")
            assert (error.__cause__.code, error.__cause__.is_lasting) == (b'407', True)
            assert error.__cause__.headers == (
                (b'proxy-authenticate', b'Basic realm="a: b"'), (b'content-length', b'0'))
            for shown in answers.values():
                await failed(request(b'GET', 'https://name.test/'), HttpConnectionError,
                             ProxyError, said + shown)
    assert proxy.ends == len(proxy.heads) == 1 + len(answers)
    async with listening(hanging_up) as address:
        async with pool(get_connection=through_http_proxy(url_of_proxy(address))) as request:
            await failed(request(b'GET', 'https://name.test/'), HttpConnectionError, ProxyError,
                         said + "b''")


@on_loops_at_once
async def test_recipe_an_http_proxy_that_refuses_without_saying_why():
    """Its connection stays open, so that the end of what it says does not show."""
    module = recipe('through_http_proxy')
    async with listening(Proxy(0, b'HTTP/1.1 403 No\r\n\r\n')) as address:
        get_connection = module.through_http_proxy(url_of_proxy(address))
        async with pool(get_connection=get_connection, socket_timeout=PATIENCE) as request:
            await failed(
                request(b'GET', 'http://name.test/'), HttpConnectionError, module.ProxyError,
                "GET http://name.test:80: get_connection failed: ProxyError: the proxy answered "
                "b'HTTP/1.1 403 No'")
    assert asyncio.current_task().cancelling() == 0


async def hanging_up(reader, writer):
    await reader.read(1)
    writer.write_eof()
    await reader.read()
    writer.close()


@pytest.mark.parametrize('head', [
    b'HTTP/1.1 200 \r\n\r\n', b'HTTP/1.0 200 OK\n\n', b'HTTP/1.1 200\na: b\r\n\n',
    b'HTTP/1.1 299 OK\r\na: b\n\r\n', b'HTTP/1.1 100 Continue\n\nHTTP/1.1 200 OK\n\n'])
@on_loops
async def test_recipe_through_an_http_proxy_takes_no_byte_of_the_server(head):
    """A response that comes at once is one to no request."""
    async def script(reader, writer):
        await reader.readuntil(b'\r\n\r\n')
        writer.write(head + OK)
        await reader.read()
        writer.close()

    async with listening(script) as address:
        through_http_proxy = recipe('through_http_proxy').through_http_proxy
        get_connection = through_http_proxy(url_of_proxy(address))
        with await get_connection('http', 'name.test', 80) as sock:
            assert await asyncio.get_running_loop().sock_recv(sock, 100) == OK


class SocksProxy:
    """A SOCKS5 proxy: whatever it is asked for is a port of its own machine."""

    def __init__(self, port, method=0, code=0, bound=b'\1\0\0\0\0'):
        self.port = port
        self.method = method
        self.code = code
        self.bound = bound
        self.asked = []

    async def __call__(self, reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            assert (await reader.readexactly(1)) == b'\5'
            methods = await reader.readexactly((await reader.readexactly(1))[0])
            assert methods == b'\0'
            writer.write(bytes((5, self.method)))
            assert (await reader.readexactly(3)) == b'\5\1\0'
            kind = (await reader.readexactly(1))[0]
            length = {1: 4, 4: 16}.get(kind) or (await reader.readexactly(1))[0]
            host = await reader.readexactly(length)
            port = int.from_bytes(await reader.readexactly(2), 'big')
            self.asked.append((kind, host, port))
            answer = bytes((5, self.code, 0)) + self.bound + b'\0\0'
            if self.code:
                writer.write(answer)
                assert await reader.read() == b''
            else:
                await tunnel(reader, writer, self.port, answer)
        writer.close()


@SCHEMES
@on_loops
async def test_recipe_through_a_socks_proxy(scheme):
    through_socks_proxy = recipe('through_socks_proxy').through_socks_proxy
    async with Server(Answering(OK), context_of(scheme)) as server:
        for bound, at in ((b'\1\0\0\0\0', '127.0.0.1'), (b'\4' + bytes(16), '::1'),
                          (b'\3\4name', '127.0.0.1')):
            proxy = SocksProxy(server.port, bound=bound)
            async with listening(proxy, at) as address:
                async with pool(get_connection=through_socks_proxy(address[:2]),
                                get_ssl_context=trusting, get_dns_resolver=unwanted) as request:
                    for host in ('name.test', '127.0.0.1:81', 'name.test'):
                        assert (await get(request, f'{scheme}://{host}/'))[2] == b'ok'
                    with contextlib.suppress(HttpTlsError):
                        await get(request, f'{scheme}://[::1]:82/')
            port = 443 if scheme == 'https' else 80
            assert proxy.asked == [
                (3, b'name.test', port), (1, b'\x7f\0\0\1', 81), (4, bytes(15) + b'\1', 82)]


@on_loops
async def test_recipe_through_a_socks_proxy_that_refuses():
    async def check(proxy, cause, text):
        async with listening(proxy) as address:
            get_connection = recipe('through_socks_proxy').through_socks_proxy(address)
            async with pool(get_connection=get_connection) as request:
                await failed(request(b'GET', 'http://name.test/'), HttpConnectionError, cause,
                             'GET http://name.test:80: get_connection failed: ' + text)

    await check(SocksProxy(0, code=2), ConnectionError, 'ConnectionError: the proxy answered 2')
    await check(SocksProxy(0, method=255), ConnectionError,
                'ConnectionError: the proxy wants authentication')
    await check(hanging_up, EOFError, 'the proxy closed the connection')


@pytest.mark.parametrize('name', ['through_http_proxy', 'through_socks_proxy'])
@on_loops_at_once
async def test_recipe_a_proxy_that_says_nothing_is_left_in_time(name):
    async def silent(reader, writer):
        started.set()
        await reader.read()
        ended.append(True)
        writer.close()

    started, ended = asyncio.Event(), []
    async with listening(silent) as address:
        proxy = address if 'socks' in name else url_of_proxy(address)
        get_connection = getattr(recipe(name), name)(proxy)
        async with pool(get_connection=get_connection, socket_timeout=0.1) as request:
            await failed(
                request(b'GET', 'http://name.test/'), HttpConnectionError, TimeoutError)
        async with pool(get_connection=get_connection) as request:
            started.clear()
            task = asyncio.create_task(request(b'GET', 'http://name.test/'))
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert ended == [True, True]


@on_loops
async def test_recipe_a_test_double_without_a_port():
    async def handler(reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError):  # once the client has closed
            while True:
                heads.append(await reader.readuntil(b'\r\n\r\n'))
                writer.write(OK)
        writer.close()

    heads = []
    to_handler = recipe('to_handler').to_handler
    async with asyncio.TaskGroup() as group:
        async with pool(get_connection=to_handler(handler, group)) as request:
            for _ in range(2):
                assert (await get(request, 'http://name.test/a'))[2] == b'ok'
    assert heads == [b'GET /a HTTP/1.1\r\nhost: name.test\r\n\r\n'] * 2


@on_loops
async def test_recipe_a_test_double_may_be_cancelled_while_it_connects():
    async with asyncio.TaskGroup() as group:
        get_connection = recipe('to_handler').to_handler(unwanted, group)
        async with pool(get_connection=get_connection) as request:
            task = asyncio.create_task(request(b'GET', 'http://name.test/'))
            await turns(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


NOT_PUBLIC = (
    '127.0.0.1', '127.255.255.254', '10.0.0.1', '172.16.0.1', '192.168.0.1', '169.254.169.254',
    '0.0.0.0', '100.64.0.1', '192.0.2.1', '224.0.0.1', '240.0.0.1', '255.255.255.255',
    '::', '::1', 'fe80::1', 'fe80::1%lo', 'fc00::1', 'fec0::1', 'ff02::1', 'ff0e::1',
    '2001:db8::1', '2001::1', '::ffff:127.0.0.1', '::ffff:10.0.0.1', '::ffff:169.254.169.254',
    '64:ff9b::127.0.0.1', '64:ff9b::a9fe:a9fe', '64:ff9b:1::1', '2002:7f00:1::', '2002:a00:1::',
    '2002:a9fe:a9fe::1', '::127.0.0.1', '::10.0.0.1')
PUBLIC = ('8.8.8.8', '1.1.1.1', '193.0.6.139', '2606:4700:4700::1111', '2a00:1450:4001::1',
          '::ffff:8.8.8.8', '64:ff9b::808:808', '2002:808:808::1')


@on_loops
async def test_recipe_names_of_addresses_that_are_not_public_are_refused():
    async def lookup(addresses, kind, cause, message=None):
        module.Resolver = pinned({'name.test': addresses})
        with row(addresses):
            async with pool(get_dns_resolver=module.get_public_resolver,
                            get_sock=get_sock) as request:
                await failed(request(b'GET', 'http://name.test/'), kind, cause, message)

    def get_sock(family):
        raise Unwanted('it went on to connect')

    pinned = recipe('pinned').pinned
    module = recipe('get_public_resolver')
    for address in NOT_PUBLIC:
        await lookup([address], HttpDnsError, module.NotPublic,
                     'GET http://name.test:80: resolving name.test failed: '
                     f'NotPublic: {ipaddress.ip_address(address)} is not public')
    for address in PUBLIC:
        await lookup([address], HttpConnectionError, Unwanted)
    # One of several is enough.
    await lookup(['8.8.8.8', '127.0.0.1'], HttpDnsError, module.NotPublic)


# URLs whose host is an address, in any form that lowhaio takes for one: it is never resolved.
LITERALS = {
    'http://127.0.0.1/': '127.0.0.1',
    'http://127.0.0.1./': '127.0.0.1',
    'http://127.0.0.1:8080/': '127.0.0.1',
    'http://\uff11\uff12\uff17.0.0.1/': '127.0.0.1',
    'http://\u2460\u2461\u2466.0.0.1/': '127.0.0.1',
    'http://127\u30020\u30020\u30021/': '127.0.0.1',
    'https://169.254.169.254/': '169.254.169.254',
    'http://0.0.0.0/': '0.0.0.0',
    'http://[::1]/': '::1',
    'http://[::]/': '::',
    'http://[0:0::0001]/': '::1',
    'http://[::ffff:127.0.0.1]/': '::ffff:7f00:1',
    'http://[::ffff:7f00:1]/': '::ffff:7f00:1',
    'http://[64:ff9b::7f00:1]/': '64:ff9b::7f00:1',
    'http://[fe80::1%25lo]/': 'fe80::1',
    'http://[fe80::1%lo]/': 'fe80::1',
}

# Those that others may take for addresses, and that are refused before anything is resolved.
NO_LITERALS = (
    'http://127.1/', 'http://0x7f.1/', 'http://0x7f.0.0.1/', 'http://0x7f000001/',
    'http://2130706433/', 'http://0177.0.0.1/', 'http://017700000001/', 'http://0/',
    'http://127.0.0.1../', 'http://127.0.0.01/', 'http://127.0.0.256/', 'http://127.0.0.1.1/',
    'http://a@127.0.0.1/', 'http://a:b@127.0.0.1/', 'http://8.8.8.8:80@127.0.0.1/',
    'http://127.0.0.1\\@8.8.8.8/', 'http://127.0.0.1\\.test/', 'http://127%2e0.0.1/',
    'http://%31%32%37.0.0.1/', 'http://[::1', 'http://[127.0.0.1]/', 'http://::1/',
    'http://[::1]a/', 'http://[::1%]/', 'http://[::1%25/]/', 'http:///127.0.0.1/',
    'http:127.0.0.1', '//127.0.0.1/', 'http://\uff10x7f.1/', 'http://127.0.0.1 /',
    'http://127.0.0.1\t/', 'file:///etc/passwd')


@on_loops
async def test_recipe_connections_to_addresses_that_are_not_public_are_refused():
    """All of them pass through the socket, however the address came about."""
    module = recipe('get_public_sock')
    get_sock, NotPublic = module.get_public_sock, module.NotPublic
    async with pool(get_sock=get_sock, get_dns_resolver=unwanted) as request:
        for url, address in LITERALS.items():
            with row(url):
                error = await failed(request(b'GET', url), HttpConnectionError, NotPublic)
                shown = ipaddress.ip_address(address)  # as this version of Python shows it
                assert str(error).endswith(f': NotPublic: {shown} is not public')
        for url in NO_LITERALS:
            with row(url):
                error = await failed(request(b'GET', url), HttpConnectionError, ValueError)
                assert ', refused: url must ' in str(error)
    async with pool(get_sock=get_sock, get_dns_resolver=always('127.0.0.1')) as request:
        await failed(
            request(b'GET', 'http://name.test/'), HttpConnectionError, NotPublic,
            'GET http://name.test:80: connecting failed: '
            '127.0.0.1: NotPublic: 127.0.0.1 is not public')


@SCHEMES
@on_loops
async def test_recipe_a_socket_that_looks_at_its_address_is_used_like_any_other(scheme):
    asked = []
    module = recipe('get_public_sock')
    module.check_public = lambda address: asked.append(str(address))
    async with Server(Answering(OK), context_of(scheme)) as server:
        async with pool(get_sock=module.get_public_sock, get_ssl_context=trusting) as request:
            for _ in range(2):
                assert (await get(request, server.url))[2] == b'ok'
        assert len(server.peers) == 1
    assert asked == ['127.0.0.1']


@on_loops
async def test_recipe_the_resolver_of_the_system():
    asked = []
    get_system_resolver = recipe('get_system_resolver').get_system_resolver

    def counting(**kwargs):
        resolve, clear_cache = get_system_resolver(**kwargs)

        async def resolve_counting(host, record_type, **kwargs):
            asked.append((host, record_type))
            return await resolve(host, record_type, **kwargs)

        return resolve_counting, clear_cache

    async with Server(Answering(OK)) as server:
        async with pool(get_dns_resolver=counting, keep_alive_timeout=0) as request:
            for _ in range(3):
                assert (await get(request, f'http://localhost:{server.port}/'))[2] == b'ok'
        assert len(server.peers) == 3
    assert asked == [('localhost', aiodnsresolver.TYPES.A)]
    resolve, _ = get_system_resolver(get_logger_adapter=None)
    loop = asyncio.get_running_loop()
    for address, record_type in (
            ('127.0.0.1', aiodnsresolver.TYPES.A), ('::1', aiodnsresolver.TYPES.AAAA)):
        [found] = await resolve(address, record_type, get_logger_adapter=None)
        assert (str(found), type(found).__bases__) == (
            address, (type(ipaddress.ip_address(address)),))
        assert 5 < found.expires_at - loop.time() <= 10
    with pytest.raises(aiodnsresolver.DnsRecordDoesNotExist):
        await resolve('127.0.0.1', aiodnsresolver.TYPES.AAAA, get_logger_adapter=None)


@on_loops
async def test_recipe_pinned_addresses():
    async with Server(Answering(OK)) as server:
        addresses = {'a.test': ['127.0.0.1'], 'b.test': ['::ffff:127.0.0.1'], 'c.test': []}
        async with pool(get_dns_resolver=recipe('pinned').pinned(addresses)) as request:
            for name in ('a.test', 'b.test'):
                assert (await get(request, f'http://{name}:{server.port}/'))[2] == b'ok'
            for name in ('c.test', 'd.test'):
                await failed(
                    get(request, f'http://{name}:{server.port}/'), HttpDnsError,
                    aiodnsresolver.DnsRecordDoesNotExist,
                    f'GET http://{name}:{server.port}: resolving {name} failed: '
                    'DnsRecordDoesNotExist')


# --------------------------------------------------------- the troubleshooting of the README

TROUBLES = re.findall(
    r'^\|[^|]+\| `([^|]+)` \|',
    README.partition('## Troubleshooting')[2].partition('\n## ')[0], re.MULTILINE)


def as_printed(error):
    """The last line of a traceback, but for what differs between systems and between tests."""
    text = f'{type(error).__name__}: {error}'.splitlines()[0].replace('0.05 seconds', '10 seconds')
    return re.sub(r' \(_ssl\.c:\d+\)|\[Errno \d+\] ', '', text)


def routed(address, **options):
    """A pool for which www.example.com is 192.0.2.1, and that is a server of ours."""
    def get_sock(family):
        sock = SockTo(family)
        sock.setblocking(False)
        sock.address = address
        return sock

    return pool(**{'get_dns_resolver': always('192.0.2.1'), 'get_sock': get_sock,
                   'get_ssl_context': trusting, **options})


async def said(address, method=b'GET', url='http://www.example.com/', options=(), **kwargs):
    async with routed(address, **dict(options)) as request:
        return as_printed(await failure(request(method, url, **kwargs)))


async def troubles_of_arguments(address):
    async def in_memory():
        return b'ok'

    async def strings():
        yield 'ok'

    yield await said(address, 'GET')
    yield await said(address, headers=(('accept', '*/*'),))
    yield await said(address, headers={b'accept': b'*/*'})
    yield await said(address, url='www.example.com/')
    put = functools.partial(said, address, b'PUT', headers=of_length(2))
    yield await put(body=b'ok')
    yield await put(body=in_memory)
    yield await put(body=strings)
    yield await put(body=streamed(b'ok'), headers=())
    chunks = streamed(b'ok')()
    assert [chunk async for chunk in chunks] == [b'ok']
    yield await put(body=lambda: chunks)


async def troubles_of_names_and_connecting(address):
    async def nothing(host):
        raise aiodnsresolver.DnsRecordDoesNotExist

    async def silence(host):
        raise aiodnsresolver.DnsTimeout

    async def refusing(reader, writer):
        await reader.readuntil(b'\r\n\r\n')
        writer.write(b'HTTP/1.1 407 Proxy Authentication Required\r\n\r\n')
        writer.close()

    for resolve in nothing, silence:
        yield await said(address, options={'get_dns_resolver': resolving(resolve)})
    [sock] = bound_to('127.0.0.1')
    with sock:
        yield await said(sock.getsockname())
        with full_backlog(sock):
            yield await said(sock.getsockname(), options={'socket_timeout': 0.05})
    async with listening(refusing) as proxy:
        through_http_proxy = recipe('through_http_proxy').through_http_proxy
        yield await said(address, options={
            'get_connection': through_http_proxy(url_of_proxy(proxy))})


async def troubles_of_tls(address):
    async def said_to_tls(*names, url='https://www.example.com/', options=(), **kwargs):
        async with Server(Answering(OK), certified(*names, **kwargs)) as server:
            return await said(('127.0.0.1', server.port), url=url, options=options)

    async def plain(peer):
        await peer.read(1)
        await peer.send(b'HTTP/1.1 400 Bad Request\r\n\r\n')

    async with Server(plain) as server:
        yield await said(('127.0.0.1', server.port), url='https://www.example.com/')
    yield await said_to_tls('www.example.com', url='http://www.example.com/')
    yield await said_to_tls(
        'www.example.com', not_after=datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC))
    yield await said_to_tls('example.com')
    yield await said_to_tls(
        'www.example.com', options={'get_ssl_context': ssl.create_default_context})
    root, server_side = private_authority('www.example.com', x509.KeyUsage)
    async with Server(Answering(OK), server_side) as server:
        yield await said(
            ('127.0.0.1', server.port), url='https://www.example.com/',
            options={'get_ssl_context': lambda: strict_context(root)})


async def troubles_of_responses(address):
    class Keeping(HttpLoggerAdapter):
        def log(self, level, message, *args, **kwargs):
            logged.append(f'{self.prefix(level)} {message % args}')

    def adapter(extra):
        return Keeping(logging.getLogger('quiet'), extra)

    logged = []
    async with Server(Peer.closed) as server:
        yield await said(('127.0.0.1', server.port), options={'socket_timeout': 0.05})
    url = 'http://www.example.com/'
    async with Server(Answering(UNFINISHED)) as server, routed(
            ('127.0.0.1', server.port), max_connections=1, pool_timeout=0.05) as request:
        _, _, body = await request(b'GET', url)
        yield as_printed(await failure(request(b'GET', url, get_logger_adapter=adapter)))
        yield logged[0]
        await body.aclose()
    with no_descriptor_left():
        yield await said(address, options={'get_sock': default_of('get_sock')})
    async with routed(address) as request:
        _, _, body = await request(b'GET', url)
        assert await buffered(body) == b'ok'
        with pytest.raises(RuntimeError) as caught:
            await buffered(body)
        yield as_printed(caught.value)


async def said_of_another_loop(address):
    async def body():
        await other.create_future()
        yield b'never'

    other = asyncio.new_event_loop()
    try:
        return await said(address, method=b'PUT', body=body)
    finally:
        other.close()


USED_BEFORE_A_FORK = """
import asyncio, os, socket, sys
from lowhaio import Pool

async def get_connection(*_):
    return socket.create_connection((sys.argv[1], int(sys.argv[2])))

async def main():
    request, _ = Pool(get_connection=get_connection, keep_alive_timeout=0)
    await request(b'GET', 'http://www.example.com/')
    pid = os.fork()
    if not pid:
        try:
            await request(b'GET', 'http://www.example.com/')
        except Exception as error:
            print(f'{type(error).__name__}: {error}', flush=True)
        os._exit(0)
    os.waitpid(pid, 0)

asyncio.run(main())
"""


async def troubles_of_readers(address):
    async with Server(holding(UNFINISHED)) as server, routed(
            ('127.0.0.1', server.port)) as request:
        _, _, body = await request(b'GET', 'http://www.example.com/')
        reading = asyncio.create_task(buffered(body))
        await turns(5)
        yield as_printed(await failure(anext(body)))
        await body.aclose()
        yield as_printed(await failure(reading))


async def troubles_of_pools(address):
    url = 'http://www.example.com/'
    async with routed(address) as request:
        with pytest.raises(TypeError) as caught, pytest.warns(RuntimeWarning) as warned:
            code, headers, body = request(b'GET', url)
        yield as_printed(caught.value)
        yield as_printed(warned[0].message)
        await get(request, url)
        with concurrent.futures.ThreadPoolExecutor() as executor:
            other = executor.submit(asyncio.run, failure(request(b'GET', url)))
            yield as_printed(await asyncio.wrap_future(other))
    yield await said_of_another_loop(address)
    with concurrent.futures.ThreadPoolExecutor() as executor:
        forked = executor.submit(run_script, USED_BEFORE_A_FORK, address[0], str(address[1]))
        yield (await asyncio.wrap_future(forked)).stdout.splitlines()[-1]
    async with Server(Answering(OK)) as server:
        other_request, close = Pool()
        await get(other_request, server.url)
        with concurrent.futures.ThreadPoolExecutor() as executor:
            other = executor.submit(asyncio.run, failure(close()))
            yield as_printed(await asyncio.wrap_future(other))
        await close()
    yield as_printed(await failure(request(b'GET', url)))


@on_loops
async def test_what_goes_wrong_is_printed_as_the_readme_says():
    async with Server(Answering(OK)) as server:
        printed = [text for troubles in (
            troubles_of_arguments, troubles_of_names_and_connecting, troubles_of_tls,
            troubles_of_responses, troubles_of_readers, troubles_of_pools)
            async for text in troubles(('127.0.0.1', server.port))]
    assert printed == TROUBLES[:-2]


@pytest.mark.parametrize('loop_name', LOOPS)
def test_a_pool_that_was_not_closed_is_warned_of_as_the_readme_says(loop_name, plain_website):
    async def main():
        request, close = Pool()
        await get(request, plain_website)

    with pytest.warns(ResourceWarning) as warned:  # noqa: PT031
        with asyncio.Runner(loop_factory=LOOPS[loop_name]) as runner:
            runner.run(main())
        del runner
        gc.collect()
    assert as_printed(warned[0].message) == TROUBLES[-2]


DOWNLOAD = '''
import asyncio, signal, sys
from lowhaio import Pool

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it

async def main():
    request, close = Pool()
    code, headers, body = await request(b'GET', sys.argv[2])
    async for chunk in body:
        print(chunk, flush=True)

if sys.argv[1] == 'uvloop':
    from uvloop import new_event_loop
else:
    new_event_loop = None
with asyncio.Runner(loop_factory=new_event_loop) as runner:
    runner.run(main())
'''


@pytest.mark.parametrize('loop_name', LOOPS)
def test_an_interrupted_download_prints_what_the_readme_says(loop_name):
    with socket.create_server(('127.0.0.1', 0)) as server:
        url = f'http://127.0.0.1:{server.getsockname()[1]}/'
        with subprocess.Popen(
                [sys.executable, '-X', 'dev', '-W', 'error', '-c', DOWNLOAD, loop_name, url],
                env={**os.environ, 'PYTHONPATH': str(HERE)}, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
            sock, _ = server.accept()
            with sock:
                sock.sendall(UNFINISHED)
                child.stdout.readline()
                child.send_signal(signal.SIGINT)
                printed = child.communicate(timeout=PATIENCE)[1].splitlines()
    # Nothing but the traceback: no task, connection or warning is left to complain.
    assert printed[0] == 'Traceback (most recent call last):'
    assert printed[-1] == TROUBLES[-1]
    assert not re.search('Warning|ignored|never retrieved', ''.join(printed))


# ----------------------------------------------------------------------- examples, package


class Website(http.server.BaseHTTPRequestHandler):
    """It answers anything."""

    protocol_version = 'HTTP/1.1'

    def do_GET(self):
        self.send_response(200)
        self.send_header('content-length', '12')
        self.end_headers()
        self.wfile.write(b'<p>Hello</p>')

    def log_message(self, *args):
        pass


class WebServer(http.server.ThreadingHTTPServer):
    request_queue_size = 64
    daemon_threads = True


class SockTo(socket.socket):
    """Connects to one address, whatever it is told."""

    address = None

    def connect(self, address):
        super().connect(self.address)


@contextlib.contextmanager
def serving(server):
    """In a thread."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()


def run_quickstart(*args):
    return subprocess.run(
        [sys.executable, HERE / 'examples' / 'quickstart.py', *args], capture_output=True,
        env={**os.environ, 'PYTHONPATH': str(HERE)}, timeout=60, check=False)


def test_quickstart_streams_both_ways_over_one_connection():
    ended = run_quickstart()
    printed = ended.stdout.decode()
    assert ended.returncode == 0, ended.stderr
    assert re.search(r'Upload +201, 67108864 bytes, from port (\d+)\n'
                     r'Download +200, 67108864 bytes, to port \1\n', printed)
    assert "the second request reused the first one's" in printed
    assert b'Upload: 100%' in ended.stderr
    assert b'Download: 100%' in ended.stderr


@pytest.fixture
def plain_website():
    with WebServer(('127.0.0.1', 0), Website) as server, serving(server):
        yield f'http://127.0.0.1:{server.server_port}/page'


def test_quickstart_fetches_a_url_to_standard_output(plain_website):
    ended = run_quickstart(plain_website)
    assert (ended.returncode, ended.stdout) == (0, b'<p>Hello</p>')


def test_quickstart_fetches_a_url_to_a_file(plain_website, tmp_path):
    ended = run_quickstart(plain_website, '--output', tmp_path / 'page')
    assert (ended.returncode, ended.stdout) == (0, b'')
    assert (tmp_path / 'page').read_bytes() == b'<p>Hello</p>'


def test_quickstart_says_what_failed():
    with socket.socket() as sock:  # bound, and not listening
        sock.bind(('127.0.0.1', 0))
        ended = run_quickstart(f'http://127.0.0.1:{sock.getsockname()[1]}/')
    assert ended.returncode == 1
    assert b'HttpConnectionError: GET http://127.0.0.1:' in ended.stderr
    assert b'Connection refused' in ended.stderr


def test_importing_imports_nothing_big():
    ended = subprocess.run(
        [sys.executable, '-c', 'import asyncio, sys; before = set(sys.modules); import lowhaio; '
         'print(*sorted(set(sys.modules) - before))'],
        capture_output=True, env={**os.environ, 'PYTHONPATH': str(HERE)}, check=True)
    imported = set(ended.stdout.decode().split())
    # The resolver is imported at the first host name.
    assert 'lowhaio' in imported
    assert not imported & {'aiodnsresolver', 'urllib.parse', 'http.client', 'email'}
