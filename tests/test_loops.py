"""A pool and its event loop: one loop only, forks, loops that are closed too early, and turns left
for other tasks.
"""

import asyncio
import contextlib
import gc
import itertools
import os
import socket
import subprocess
import sys
import threading

import pytest

import lowhaio
from lowhaio import HttpConnectionError, HttpDataError, Pool, buffered, streamed
from tests.harness import (
    CHUNKED,
    EXPECT,
    LARGE,
    LOOPS,
    OK,
    PATIENCE,
    ROOT,
    SCHEMES,
    UPLOAD,
    WAITING,
    WAS_CLOSED,
    Answering,
    AnsweringInThreads,
    Server,
    ThreadServer,
    Unwanted,
    asking,
    bound_to,
    context_of,
    deaf_server,
    default_of,
    failed,
    forever,
    full_backlog,
    get,
    listening,
    nothing_left,
    of_length,
    on_loops,
    open_descriptors,
    peer_prefix,
    pool,
    receive_end,
    receive_exactly,
    receive_head,
    resolving,
    run_on,
    run_rows,
    run_script,
    server_context,
    small_sock,
    trusting,
    turns,
    until,
    until_idle,
    unwanted,
)


# ----------------------------------------------------------------------------------------- harness


def has_arrived(sock: socket.socket, number: int) -> bool:
    """So many bytes can be read from a socket that does not block."""
    try:
        return len(sock.recv(number, socket.MSG_PEEK)) == number
    except BlockingIOError:
        return False


@pytest.mark.skipif('uvloop' not in LOOPS, reason='only uvloop waits then')
def test_what_is_left_open_on_uvloop_fails_a_test_and_does_not_hang_it():
    async def leave_open():
        await asyncio.start_server(unwanted, '127.0.0.1', 0)

    with pytest.raises(AssertionError, match='unclosed resource <TCPServer'):
        in_loop('uvloop', leave_open)


@pytest.mark.parametrize('loop_name', LOOPS)
def test_a_server_of_streams_is_closed_when_its_test_fails(loop_name):
    async def fail():
        async with listening(unwanted):
            raise Unwanted

    with nothing_left() as errors, pytest.raises(Unwanted):
        run_on(LOOPS[loop_name], loop_name, errors, fail)


def test_all_rows_are_run_and_those_that_fail_are_named(tmp_path_factory):
    def check(number, tmp_path, monkeypatch):
        ran.append(number)
        monkeypatch.setitem(patched, number, True)
        assert len(patched) == 1
        assert list(tmp_path.iterdir()) == []
        (tmp_path / 'file').touch()
        assert number < 3
        if number == 2:
            pytest.skip('two')

    def rows(*numbers):
        return [(f'row {number}', check, {'number': number}, {'tmp_path', 'monkeypatch'})
                for number in numbers]

    ran, patched = [], {}
    run_rows(rows(0, 1), tmp_path_factory)
    with pytest.raises(pytest.skip.Exception, match='^two'):
        run_rows(rows(2, 1), tmp_path_factory)
    with pytest.raises(AssertionError) as alone:
        run_rows(rows(1, 3, 2), tmp_path_factory)
    assert alone.value.__notes__ == ['in the row: row 3']
    with pytest.raises(BaseExceptionGroup, match='^2 of 3 rows failed') as both:
        run_rows(rows(4, 0, 5), tmp_path_factory)
    assert [error.__notes__ for error in both.value.exceptions] == [
        ['in the row: row 4'], ['in the row: row 5']]
    assert ran == [0, 1, 2, 1, 1, 3, 2, 4, 0, 5]


# ------------------------------------------------------------------------------------------- loops


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
    async def request_after_all():
        with pytest.raises(HttpConnectionError, match='refused: the pool is closed$'):
            await request(b'GET', 'http://127.0.0.1:1/')

    request, close = Pool()
    in_loop(loop_name, close)
    in_loop(loop_name, request_after_all)


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
            env={**os.environ, 'PYTHONPATH': str(ROOT)}, stdin=subprocess.PIPE) as parent:
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
            await until_idle()
            assert await buffered(body) == UPLOAD


@on_loops
async def test_what_comes_while_a_request_is_sent_uses_no_cpu():
    is_answered, go_on = asyncio.Event(), asyncio.Event()

    async def script(peer):
        await peer.read_head()
        await peer.send(OK)  # early
        is_answered.set()
        await peer.read(2)
        await Answering(OK)(peer)

    async def body():
        yield b'a'
        await go_on.wait()
        yield b'b'

    async with Server(script) as server, pool() as request:
        task = asyncio.create_task(
            request(b'PUT', server.url, headers=((b'content-length', b'2'),), body=body))
        await is_answered.wait()
        await asyncio.sleep(0.02)
        await until_idle()
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


# ---------------------------------------------------------------------------------------- no tasks


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
            receive_exactly(sock, 2)
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

    options = {'get_ssl_context': trusting, 'keep_alive_timeout': 0.03}
    async with pool(**options) as request, pool(socket_timeout=0.5, **options) as impatient:
        for path in ('', 'chunked'):
            await get(request, server.url + path)
        _, _, body = await request(
            b'PUT', server.url + 'upload', headers=((b'content-length', b'2'),), body=late_body)
        await buffered(body)
        for ask, path in ((impatient, 'silent'), (request, 'bad')):
            with pytest.raises(HttpDataError):
                await get(ask, server.url + path)
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
