"""What `buffered`, `streamed`, `repeatable`, `timeout` and the logger adapter do, and how the
errors are related.
"""

import asyncio
import contextlib
import functools
import gc
import logging
import os
import time
import weakref

import aiodnsresolver
import pytest

from lowhaio import (
    HttpConnectionClosedError,
    HttpConnectionError,
    HttpDataError,
    HttpDnsError,
    HttpError,
    HttpHeaderTooLong,
    HttpLoggerAdapter,
    HttpTlsError,
    buffered,
    empty_async_iterator,
    repeatable,
    streamed,
    timeout,
)
from tests.harness import (
    OK,
    Answering,
    Server,
    at,
    cancelling,
    forever,
    of_length,
    on_loops,
    on_loops_at_once,
    pool,
    read_before,
    turns,
    yielding,
)


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
    await chunks.aclose()
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

        # The same if the request's own body is encoded.
        once = functools.partial(wrapping, yielding(b'a'))
        body = repeatable(repeatable(once), inner)
        assert (await read_chunks(body()))[0] == b'a'
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
