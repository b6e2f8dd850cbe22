"""Cancellations arrive as what they are, in each phase of a request, at each turn of the loop."""

import asyncio
import contextlib
import functools
import inspect
import ipaddress
import itertools
import math
import re
import select
import signal
import socket
import sys
import time
import types
from ipaddress import IPv4Address

import anyio
import anyio.abc
import httpx
import pytest

from lowhaio import HttpDataError, buffered
from tests.harness import (
    LARGE,
    LOOPS,
    OK,
    PATIENCE,
    SCHEMES,
    UNFINISHED,
    Answering,
    Body,
    Server,
    Sockets,
    Uploads,
    asking,
    bound_to,
    cancelling,
    context_of,
    failure,
    forever,
    full_backlog,
    get,
    holding,
    of_length,
    on_clock,
    on_loops,
    pool,
    resolving,
    row,
    run_until,
    send_reset,
    small_sock,
    trusting,
    turns,
    until,
)


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


@on_clock
async def test_a_timeout_of_the_caller_in_the_tick_of_socket_timeout_wins():
    loop = asyncio.get_running_loop()

    async def script(peer):
        await peer.read_head()
        await peer.send(OK)
        await peer.closed()

    async with Server(script) as server, pool(socket_timeout=5) as request:
        for seconds in (4, 6):
            # A connection that is there already, so that the request is sent in one turn.
            await get(request, server.url)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(seconds):
                    loop.call_soon(pass_at_once, 7)
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


def pass_at_once(seconds):
    loop = asyncio.get_running_loop()
    loop.set_time(loop.now + seconds)


# What has come for a task in the very tick in which it is cancelled.
COMING = {
    'data': (10, lambda sock: sock.sendall(OK)),
    'end': (10, lambda sock: sock.shutdown(socket.SHUT_WR)),
    'reset': (10, send_reset),
    'time': (5, lambda sock: pass_at_once(6)),
}


@SCHEMES
@on_clock
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
                        cancelled = []
                        loop.call_soon(lambda: cancelled.append(task.cancel()))  # noqa: B023
                        come(sock)
                        [outcome] = await asyncio.gather(task, return_exceptions=True)
                        if cancelled == [True]:
                            assert isinstance(outcome, asyncio.CancelledError)
                            assert task.cancelling() == 1
                        else:
                            # The loop has looked at its sockets before, and the task had ended.
                            assert (case, scheme, cancelled) == ('data', 'http', [False])
                            assert await buffered(outcome[2]) == b'ok'

