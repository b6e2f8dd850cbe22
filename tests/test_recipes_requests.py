"""The recipes for requests and whole programs keep their word when something goes wrong.

Their functions are called, on both loops, and servers are scripted in bytes.
"""

import asyncio
import contextlib
import inspect
import socket
import sys
import types

import pytest

from lowhaio import (
    HttpConnectionError,
    HttpDataError,
    Pool,
    buffered,
    empty_async_iterator,
    streamed,
)
from lowhaio_redirect import redirectable
from tests.harness import (
    OK,
    PATIENCE,
    Answering,
    Server,
    connecting_to,
    on_loops,
    pool,
    recipe,
    turns,
    until,
)


@contextlib.asynccontextmanager
async def answered(*responses):
    """A `request`, and the script that answers it."""
    script = Answering(*responses)
    async with Server(script) as server:
        async with pool(get_connection=connecting_to(http=server.port)) as request:
            yield request, script


# ----------------------------------------------------------------------------- downloading

@on_loops
async def test_the_bar_of_a_download_goes_back_if_all_begins_anew(tmp_path, monkeypatch):
    class Bar:
        def __init__(self, **options):
            self.n, self.total = 0, None

        def __enter__(self):
            return self

        def __exit__(self, *args):
            pass

        def update(self, count):
            self.n += count
            shown.append((self.n, self.total))

    shown = []
    module = recipe('resuming-download')
    module.tqdm = Bar
    cut_off = b'HTTP/1.1 200 OK\r\netag: "%d"\r\ncontent-length: 10\r\n\r\n' + b'a' * 6
    async with Server(Answering(cut_off % 1, cut_off % 2 + b'a' * 4, close_after=True)) as server:
        async with pool() as request:
            await module.download_with_bar(
                request, server.url, str(tmp_path / 'file'), pauses=(0,))
    assert shown[0] == (6, 10)
    assert shown[-1] == (10, 10)


# ------------------------------------------------------------------- many, and in time


@on_loops
async def test_so_many_urls_at_once_and_not_more():
    async def script(peer):
        while True:
            head = await peer.read_head()
            script.running += 1
            script.asked += 1
            script.most = max(script.most, script.running)
            await until(lambda: script.asked >= 3)
            await turns(5)  # for one too many to arrive
            script.running -= 1
            if b'GET /5 ' in head:
                return
            await peer.send(OK)

    script.running = script.asked = script.most = 0
    fetch_all = recipe('many-urls').fetch_all
    async with Server(script) as server, pool() as request:
        outcomes = await fetch_all(
            request, (f'{server.url}{number}' for number in range(9)), at_once=3)
    assert script.most == 3
    assert isinstance(outcomes.pop(5), HttpDataError)
    assert outcomes == [(b'200', b'ok')] * 8


@on_loops
async def test_the_time_of_a_url_begins_with_its_turn():
    async def silent(peer):
        heads.append(await peer.read_head())
        await peer.closed()

    heads = []
    fetch_all = recipe('many-urls').fetch_all
    async with Server(silent) as server, pool() as request:
        outcomes = await fetch_all(request, [server.url] * 2, at_once=1, seconds=0.05)
    assert [type(outcome) for outcome in outcomes] == [TimeoutError] * 2
    assert len(heads) == 2


PHASES = {
    # What each phase may take; how the server behaves; what is said.
    'connect': (None, 'connecting'),
    'head': ((), 'the head of the response'),
    'idle': ((b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no',), 'the next of its body'),
    'total': ((b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no',), 'all of it'),
}


@pytest.mark.parametrize('phase', PHASES)
@on_loops
async def test_a_phase_that_takes_too_long_is_told(phase):
    async def script(peer):
        await peer.read_head()
        await peer.send(*answer)
        await peer.closed()

    async def never(scheme, host, port):
        await asyncio.get_running_loop().create_future()

    answer, what = PHASES[phase]
    fetch_in_time = recipe('time-limits').fetch_in_time
    options = {} if answer is not None else {'get_connection': never}
    async with Server(script) as server, pool(socket_timeout=PATIENCE, **options) as request:
        with pytest.raises(TimeoutError) as caught:
            await fetch_in_time(request, server.url, **(
                dict.fromkeys(('connect', 'head', 'idle', 'total'), PATIENCE) | {phase: 0.05}))
        assert str(caught.value) == f'{server.url}: {what} took too long'
    assert asyncio.current_task().cancelling() == 0


@on_loops
async def test_the_time_of_a_phase_ends_with_it():
    async def serve():
        await reader.readuntil(b'\r\n\r\n')
        for piece in (b'HTTP/1.1 200 OK\r\n', b'content-length: 2\r\n\r\n', b'o', b'k'):
            await asyncio.sleep(0.01)
            writer.write(piece)

    async def get_connection(scheme, host, port):
        return ours

    fetch_in_time = recipe('time-limits').fetch_in_time
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    reader, writer = await asyncio.open_unix_connection(sock=theirs)
    serving = asyncio.create_task(serve())
    async with pool(get_connection=get_connection) as request:
        # Connecting takes no turn of the loop, and may not take any.
        assert await fetch_in_time(
            request, 'http://name.test/', 0, PATIENCE, PATIENCE, PATIENCE) == (
                b'200', ((b'content-length', b'2'),), b'ok')
    await serving
    writer.close()
    await writer.wait_closed()


# ---------------------------------------------------------------------------- shutting down


class Work:
    """Requests whose server answers when it is told to."""

    def __init__(self, *names):
        self.jobs = asyncio.Queue()
        for name in names:
            self.jobs.put_nowait(name)
        self.stopping = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.asked = []
        self.done = []

    async def script(self, peer):
        while True:
            self.asked.append(await peer.read_head())
            await self.may_answer.wait()
            await peer.send(OK)

    async def until_stopping(self, asked, **options):
        """Stops once so many requests have arrived. With other options, is told how it ended."""
        module = recipe('shutting-down')
        async with Server(self.script) as server:
            async def work(name):
                if name == 'bad':
                    raise ZeroDivisionError
                _, _, body = await request(b'GET', server.url + name)
                await buffered(body)
                self.done.append(name)

            async def stop():
                await until(lambda: len(self.asked) == asked)
                self.stopping.set()
                await turns(5)
                if 'seconds_left' not in options:
                    self.may_answer.set()

            async with module.pool() as request:
                async with asyncio.TaskGroup() as group:
                    stopper = group.create_task(stop())
                    try:
                        await module.work_until(self.stopping, self.jobs, work, **options)
                    finally:
                        stopper.cancel()
        with pytest.raises(HttpConnectionError, match='the pool is closed'):
            await request(b'GET', server.url)


@on_loops
async def test_what_runs_is_finished_and_nothing_else_is_begun():
    work = Work('a', 'b', 'c')
    await work.until_stopping(2, at_once=2)
    assert sorted(work.done) == ['a', 'b']
    assert work.jobs.get_nowait() == 'c'


@on_loops
async def test_work_goes_on_until_it_is_stopped():
    work = Work(*'abcde')
    work.may_answer.set()
    await work.until_stopping(5, at_once=2)
    assert sorted(work.done) == [*'abcde']


@on_loops
async def test_stopping_without_work():
    work = Work()
    await work.until_stopping(0)
    assert work.done == []


@on_loops
async def test_what_runs_too_long_is_cancelled():
    work = Work('a', 'b')
    with pytest.raises(ExceptionGroup) as caught:
        await work.until_stopping(2, seconds_left=0.01)
    assert [type(error) for error in caught.value.exceptions] == [TimeoutError]
    assert len(work.asked) == 2
    assert work.done == []


@on_loops
async def test_work_that_fails_ends_it_all_and_closes_the_pool():
    work = Work('a', 'bad')
    with pytest.raises(ExceptionGroup) as caught:
        await work.until_stopping(2)
    assert caught.value.subgroup(ZeroDivisionError)
    assert work.done == []


# ------------------------------------------------------------- layers, tests, unix sockets


def sleeping(slept):
    async def sleep(seconds):
        slept.append(seconds)

    return sleep


@on_loops
async def test_the_shortest_layer_makes_again_what_was_not_sent():
    async def failing(method, url, **kwargs):
        asked.append((method, url, kwargs))
        raise errors.pop(0)

    asked, slept = [], []
    module = recipe('../scope')
    module.asyncio = types.SimpleNamespace(sleep=sleeping(slept))
    request = module.with_retry(failing)
    errors = [HttpConnectionError('refused') for _ in range(4)]
    with pytest.raises(HttpConnectionError):
        await request(b'GET', 'http://name.test/', params=())
    assert asked == [(b'GET', 'http://name.test/', {'params': ()})] * 4
    assert slept == [0, 1, 2]
    errors = [HttpConnectionError('refused'), HttpDataError('closed')]
    with pytest.raises(HttpDataError):
        await request(b'GET', 'http://name.test/')
    assert slept == [0, 1, 2, 0]


@on_loops
async def test_answers_that_are_ready_take_the_place_of_a_network():
    answering = recipe('testing-without-network').answering
    request, asked = answering({
        (b'POST', 'http://a.test/'): (b'303', ((b'location', b'/b'),), b'moved'),
        (b'GET', 'http://a.test/b'): (b'200', (), b'here'),
        (b'GET', 'http://a.test/c'): HttpDataError('closed'),
    })
    code, headers, body = await redirectable(request)(
        b'POST', 'http://a.test/', body=streamed(b'form'))
    assert (code, headers, await buffered(body)) == (b'200', (), b'here')
    assert asked == [
        (b'POST', 'http://a.test/', b'form'), (b'GET', 'http://a.test/b', b'')]
    with pytest.raises(HttpDataError, match='closed'):
        await request(b'GET', 'http://a.test/c')
    with pytest.raises(KeyError):
        await request(b'GET', 'http://a.test/d')
    # It has the parameters of the real one, in their order.
    names = list(inspect.signature(request).parameters)[:-1]
    assert names == list(inspect.signature(Pool()[0]).parameters)[:len(names)]
    assert empty_async_iterator is inspect.signature(request).parameters['body'].default


@on_loops
async def test_a_unix_socket(tmp_path):
    async def serve(reader, writer):
        await reader.readuntil(b'\r\n\r\n')
        writer.write(OK)
        await reader.read()
        writer.close()
        served.set()

    served = asyncio.Event()
    through_unix_socket = recipe('unix-socket').through_unix_socket
    path = str(tmp_path / 'server.sock')
    with contextlib.closing(await asyncio.start_unix_server(serve, path)):
        async with pool(get_connection=through_unix_socket(path)) as request:
            _, _, body = await request(b'GET', 'http://name.test/')
            assert await buffered(body) == b'ok'
        await served.wait()
    async with pool(get_connection=through_unix_socket(path + '.none')) as request:
        with pytest.raises(HttpConnectionError, match='FileNotFoundError') as caught:
            await request(b'GET', 'http://name.test/')
        assert isinstance(caught.value.__cause__, FileNotFoundError)


@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere it is refused')
@on_loops
async def test_a_unix_socket_whose_backlog_is_full(tmp_path):
    async def serve():
        sock, _ = await loop.sock_accept(listener)
        with sock:
            await loop.sock_recv(sock, 1000)
            await loop.sock_sendall(sock, OK)
            assert await loop.sock_recv(sock, 1000) == b''

    loop = asyncio.get_running_loop()
    path = str(tmp_path / 'server.sock')
    through_unix_socket = recipe('unix-socket').through_unix_socket
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        listener.listen(0)
        waiting = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2)]
        for sock in waiting:
            sock.setblocking(False)
        waiting[0].connect(path)
        with pytest.raises(BlockingIOError):
            waiting[1].connect(path)
        listener.setblocking(False)

        get_connection = through_unix_socket(path)
        async with pool(get_connection=get_connection, socket_timeout=0.05) as request:
            with pytest.raises(HttpConnectionError, match='socket_timeout') as caught:
                await request(b'GET', 'http://name.test/')
            assert isinstance(caught.value.__cause__, TimeoutError)
        async with pool(get_connection=get_connection) as request:
            task = asyncio.create_task(request(b'GET', 'http://name.test/'))
            await turns(20)
            assert not task.done()
            # There is room again once the first one has been accepted.
            (await loop.sock_accept(listener))[0].close()
            serving = asyncio.create_task(serve())
            _, _, body = await task
            assert await buffered(body) == b'ok'
        await serving
