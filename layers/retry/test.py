"""Tests of lowhaio_retry: what servers receive, and how long it waits in between."""

import asyncio
import contextlib
import gc
import inspect
import json
import pathlib
import random
import re
import time
import weakref
from email.utils import formatdate

import pytest

import lowhaio_retry
from lowhaio import (
    HttpConnectionClosedError,
    HttpConnectionError,
    HttpDataError,
    HttpError,
    HttpTlsError,
    Pool,
    buffered,
    repeatable,
    streamed,
)
from lowhaio_redirect import redirectable
from lowhaio_retry import always, if_idempotent, if_stale, is_lasting, retry
from tests.harness import (
    OK,
    Answering,
    Server,
    certified,
    ends_after,
    get,
    holding,
    internet,
    measured,
    on_clock,
    on_loops,
    passing,
    pool,
    python_blocks,
    response,
    run_block,
    turns,
    values_of,
)

NOW = 1_800_000_000
ANSWER = (b'200', (), None)


@pytest.fixture
def slept(monkeypatch):
    """Lets no time pass, but notes the seconds that would have been waited."""
    seconds = []
    sleep = asyncio.sleep

    async def sleep_at_once(delay):
        seconds.append(delay)
        await sleep(0)

    monkeypatch.setattr(lowhaio_retry, 'sleep', sleep_at_once)
    monkeypatch.setattr(time, 'time', lambda: NOW)
    return seconds


@contextlib.asynccontextmanager
async def retried(*responses, **options):
    """Yield a request that is retried, and the script that answers it."""
    script = Answering(*responses)
    async with Server(script) as server, pool() as request:
        again = retry(request, **options)
        yield lambda method=b'GET', **kwargs: again(method, server.url, **kwargs), script


class Content:
    """A response body with these chunks. An exception is raised, and None waits for ever."""

    hops = ('a fact of another layer',)
    trailers = ((b'a', b'b'),)

    def __init__(self, *chunks):
        self.chunks = list(chunks)
        self.is_closed = False

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.chunks:
            raise StopAsyncIteration
        chunk = self.chunks.pop(0)
        if chunk is None:
            await asyncio.Event().wait()
        if isinstance(chunk, BaseException):
            raise chunk
        return chunk

    async def aclose(self):
        self.is_closed = True


def failing(*errors):
    """A request that raises these one after the other, or returns what is no exception."""
    async def request(method, url, **kwargs):
        made.append((method, url, kwargs))
        outcome = errors[len(made) - 1]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    made = []
    return request, made


# ---------------------------------------------------------------------------------- exceptions


@on_loops
async def test_what_works_is_made_once(slept):
    async with retried(OK) as (request, script):
        _, _, body = await request()
        assert await buffered(body) == b'ok'
    assert len(script.heads) == 1
    assert slept == []


@pytest.mark.parametrize('failures', [1, 2, 3, 4])
@on_loops
async def test_a_connection_without_response_is_tried_again_after_0_1_2_and_4_seconds(
        slept, failures):
    async with retried(*[None] * failures, OK) as (request, script):
        code, _, _ = await request()
    assert code == b'200'
    assert len(script.heads) == failures + 1
    assert slept == [0, 1, 2, 4][:failures]


@on_loops
async def test_the_last_exception_leaves_as_it_came(slept):
    errors = [HttpDataError(str(number)) for number in range(5)]
    request, made = failing(*errors)
    with pytest.raises(HttpDataError) as raised:
        await retry(request)(b'GET', 'http://a/')
    assert raised.value is errors[4]
    assert raised.value.__context__ is None
    assert len(made) == 5
    assert slept == [0, 1, 2, 4]


@pytest.mark.parametrize('method', [b'GET', b'POST'])
@on_loops
async def test_what_can_not_be_connected_to_is_tried_again_after_0_and_some_half_and_whole_second(
        slept, method):
    async with Server(None) as server:
        url = server.url
    async with pool() as request:
        with pytest.raises(HttpConnectionError, match='connecting failed'):
            await retry(request)(method, url)
    first, second, third = slept
    assert first == 0
    assert 0.5 < second < 1 < third < 2


@on_loops
async def test_a_post_that_may_have_been_received_is_not_made_again(slept):
    async with retried(None, OK) as (request, script):
        with pytest.raises(HttpConnectionClosedError):
            await request(b'POST')
    assert len(script.heads) == 1
    assert slept == []


@pytest.mark.parametrize('first, times, before, started', [
    (HttpDataError('cut off'), 1, 'cut off', False),
    (HttpDataError('cut off'), 4, 'not connected', False),
    ((b'503', (), Content()), 1, '503', True),
    ((b'503', (), Content()), 4, 'not connected', True),
])
@on_loops
async def test_what_is_not_sent_after_something_was_says_so(
        slept, first, times, before, started):
    last = HttpConnectionError('not connected')
    last.reused = True
    last.phase = 'connect'
    request, made = failing(first, *[last] * times)
    again = retry(
        request, ((HttpConnectionError, (0,) * (times - 1)), (HttpDataError, (0,))),
        should_retry=always, code_intervals=((b'503', (0,)),))
    with pytest.raises(HttpDataError) as raised:
        await again(b'POST', 'http://a/')
    assert str(raised.value) == f'not connected (the attempt before: {before})'
    assert raised.value.__cause__ is last
    assert (raised.value.reused, raised.value.phase) == (True, 'connect')
    assert raised.value.response_started is started
    assert len(made) == times + 1


@pytest.mark.parametrize('intervals, errors, waited, attempts', [
    pytest.param(((KeyError, (1, 2)), (ValueError, (3,))),
                 (KeyError(), ValueError(), KeyError(), ANSWER), [1, 3, 2], 4, id='by-class'),
    pytest.param(((KeyError, (1, 2)), (ValueError, (3,))),
                 (ValueError(), KeyError(), ValueError()), [3, 1], 3, id='one-is-used-up'),
    pytest.param(((LookupError, (1,)), (KeyError, (2, 3))),
                 (KeyError(), KeyError()), [1], 2, id='the-first-that-fits'),
    pytest.param(((KeyError, ()), (LookupError, (2,))),
                 (IndexError(), KeyError()), [2], 2, id='never-a-subclass'),
    pytest.param(((KeyError, (1,)),), (ValueError(),), [], 1, id='none-fits'),
    pytest.param((), (ValueError(),), [], 1, id='none'),
    pytest.param(((HttpError, (1.5,)),), (HttpDataError(), ANSWER), [1.5], 2, id='a-base'),
])
@on_loops
async def test_each_exception_has_its_intervals(slept, intervals, errors, waited, attempts):
    request, made = failing(*errors)
    again = retry(request, intervals)
    if errors[-1] is ANSWER:
        assert await again(b'GET', 'http://a/') is ANSWER
    else:
        with pytest.raises(type(errors[-1])) as raised:
            await again(b'GET', 'http://a/')
        assert raised.value is errors[-1]
    assert slept == waited
    assert len(made) == attempts


@on_loops
async def test_each_request_counts_on_its_own(slept):
    request, made = failing(*[KeyError()] * 4)
    again = retry(request, iter([(KeyError, iter([1]))]))
    for _ in range(2):
        with pytest.raises(KeyError):
            await again(b'GET', 'http://a/')
    assert slept == [1, 1]


@on_clock
async def test_each_attempt_has_the_times_of_the_request():
    script = holding(b'')
    async with Server(script) as server, pool() as request:
        again = retry(request, ((HttpDataError, (0, 0)),))
        seconds, task = await measured(again(b'GET', server.url, timeouts={'read': 0.5}))
        assert (type(task.exception()), task.exception().phase) == (HttpDataError, 'head')
    assert (seconds, script.sent) == (1.5, 3)


@on_loops
async def test_the_body_function_is_called_anew(slept):
    calls = []

    def body(*args, **kwargs):
        calls.append((args, kwargs))
        return streamed(b'abc')()

    async with retried(None, None, OK) as (request, script):
        await request(b'PUT', params=(('p', 'q'),), body=body, body_args=iter([1]),
                      headers=iter([(b'content-length', b'3')]), body_kwargs={'c': 2})
    assert calls == [((1,), {'c': 2})] * 3
    assert script.bodies == [b'abc'] * 3
    assert script.lines == ['PUT /?p=q'] * 3


@on_loops
async def test_iterators_are_good_for_each_attempt_also_beside_other_keywords(slept):
    async with retried(None, None, OK, OK) as (request, script):
        for others in {}, {'timeouts': {'read': 5}}:
            await request(headers=iter([(b'x-a', b'1'), (b'x-b', b'2')]), **others)
    assert [values_of(head, b'x-b') for head in script.heads] == [[b'2']] * 4


@on_loops
async def test_a_body_that_can_be_made_once_is_not_sent_empty(slept):
    chunks = streamed(b'abc')()
    async with retried(None, OK) as (request, script):
        with pytest.raises(HttpDataError, match='body must return a new async iterator'):
            await request(b'PUT', body=lambda: chunks, headers=((b'content-length', b'3'),))
    assert script.bodies == [b'abc']


@on_loops
async def test_an_exception_is_freed_as_soon_as_the_request_has_ended(slept):
    class Watched(HttpDataError):
        def __init__(self):
            raised.append(weakref.ref(self))

    async def request(method, url, **kwargs):
        if not raised:
            raise Watched
        return ANSWER

    raised = []
    gc.disable()
    try:
        assert await retry(request)(b'GET', 'http://a/') == ANSWER
        assert raised[0]() is None
    finally:
        gc.enable()


@on_loops
async def test_an_exception_that_is_raised_is_freed_by_who_caught_it(slept):
    class Watched(Exception):
        pass

    async def request(method, url, **kwargs):
        raise Watched

    gc.disable()
    try:
        try:
            await retry(request)(b'GET', 'http://a/')
        except Watched as error:
            held = weakref.ref(error)
        assert held() is None
    finally:
        gc.enable()


@on_loops
async def test_other_keywords_are_passed_on(slept):
    request, made = failing(HttpDataError(), ANSWER)
    await retry(request)(b'GET', 'http://a/', x=1)
    assert [kwargs['x'] for _, _, kwargs in made] == [1, 1]


# -------------------------------------------------------------------------------- cancellation


@on_loops
async def test_cancellation_of_a_request_is_not_retried():
    async def script(peer):
        await peer.read_head()
        asked.append(peer.index)
        await peer.closed()
        closed.set()

    asked, closed = [], asyncio.Event()
    async with Server(script) as server, pool() as request:
        task = asyncio.create_task(retry(request, ((Exception, (0,)),))(b'GET', server.url))
        while not asked:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await closed.wait()
    assert asked == [0]


@on_loops
async def test_cancellation_while_it_waits_ends_it():
    request, made = failing(HttpDataError())
    task = asyncio.create_task(retry(request, ((HttpDataError, (10000,)),))(b'GET', 'http://a/'))
    await turns(3)
    assert len(made) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@on_loops
async def test_a_time_limit_around_it_holds():
    request, _ = failing(HttpDataError())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await retry(request, ((HttpDataError, (10000,)),))(b'GET', 'http://a/')
    assert asyncio.current_task().cancelling() == 0


# ------------------------------------------------------------------------------- should_retry


def error(kind, reused=False, response_started=False):
    made = kind('text')
    made.reused = reused
    made.response_started = response_started
    return made


@pytest.mark.parametrize('method, given, idempotent, stale', [
    (b'GET', error(HttpDataError), True, False),
    (b'HEAD', error(HttpDataError), True, False),
    (b'OPTIONS', error(HttpDataError), True, False),
    (b'TRACE', error(HttpDataError), True, False),
    (b'PUT', error(HttpDataError), True, False),
    (b'DELETE', error(HttpDataError), True, False),
    (b'POST', error(HttpDataError), False, False),
    (b'PATCH', error(HttpDataError), False, False),
    (b'get', error(HttpDataError), False, False),
    (b'POST', error(HttpConnectionError), True, True),
    (b'POST', error(HttpConnectionClosedError, True, False), False, True),
    (b'POST', error(HttpDataError, True, False), False, False),
    (b'POST', error(HttpConnectionClosedError, True, True), False, False),
    (b'POST', error(HttpConnectionClosedError, False, False), False, False),
    (b'GET', None, True, False),
    (b'POST', None, False, False),
    (b'GET', ValueError(), True, False),
    (b'POST', ValueError(), False, False),
])
def test_the_ready_made_predicates(method, given, idempotent, stale):
    assert always(method, given) is True
    assert if_idempotent(method, given) is idempotent
    assert if_stale(method, given) is stale


@pytest.mark.parametrize('method, should_retry, attempts', [
    (b'GET', if_idempotent, 2), (b'POST', if_idempotent, 1), (b'POST', always, 2),
    (b'GET', if_stale, 1),
])
@on_loops
async def test_a_new_connection_that_fails(slept, method, should_retry, attempts):
    async with retried(None, OK, should_retry=should_retry) as (request, script):
        with contextlib.suppress(HttpConnectionClosedError):
            await request(method)
    assert len(script.heads) == attempts


@on_loops
async def test_a_stale_connection_is_no_failure_for_if_stale(slept):
    async with retried(OK, None, OK, should_retry=if_stale) as (request, script):
        for _ in range(2):
            _, _, body = await request(b'POST')
            assert await buffered(body) == b'ok'
    assert script.connections == [0, 0, 1]


@on_loops
async def test_should_retry_is_asked_with_each_exception_and_none_for_a_code(slept):
    asked = []

    def should_retry(*args):
        asked.append(args)
        return True

    async with retried(None, response(503), OK, should_retry=should_retry,
                       code_intervals=((b'503', (7,)),)) as (request, _):
        await request(b'POST')
    (method, raised), second = asked
    assert method == b'POST'
    assert isinstance(raised, HttpConnectionClosedError)
    assert second == (b'POST', None)
    assert slept == [0, 7]


# ------------------------------------------------------------------- what is never made again


class ProxyError(Exception):
    code = b'407'


class ServerError(Exception):
    code = b'502'


def raising(error):
    async def get_connection(scheme, host, port):
        raise error

    return get_connection


async def refused(request, close, server):
    return request, server.url, {'headers': ((b'a', b'\n'),)}


async def closed(request, close, server):
    await close()
    return request, server.url, {}


async def busy(request, close, server):
    _, _, BUSY[request] = await request(b'GET', server.url)
    return request, server.url, {}


async def busy_for_one(request, close, server):
    _, _, BUSY[request] = await request(b'GET', server.url)
    return request, server.url, {'timeouts': {'pool': 0.01}}


def begun(error):
    """A request whose body raises this after its beginning was sent."""
    async def given(request, close, server):
        async def body():
            yield b'a'
            await turns(5)  # the server has accepted, and has a peer to close
            raise error

        return request, server.url + 'silent', {
            'body': body, 'headers': ((b'content-length', b'2'),)}

    return given


async def too_short(request, close, server):
    return request, server.url + 'silent', {
        'body': streamed(b'a'), 'headers': ((b'content-length', b'2'),)}


async def once(request, close, server):
    generator = streamed(b'ok')()
    body = repeatable(lambda: generator)
    async for _ in generator:
        pass
    return request, server.url, {
        'body': body, 'headers': ((b'content-length', b'2'),)}


async def too_long(request, close, server):
    return request, server.url + 'long', {}


async def in_circles(request, close, server):
    return redirectable(request), server.url + 'circle', {}


async def to_another_scheme(request, close, server):
    return redirectable(request), server.url + 'ftp', {}


async def to_what_is_refused(request, close, server):
    return redirectable(request), server.url + 'refused', {}


async def to_nothing(request, close, server):
    return redirectable(request), server.url + 'nothing', {}


async def plainly(request, close, server):
    return request, server.url, {}


BUSY = {}
ANSWERS = {
    '/': b'HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n',
    '/silent': b'',
    '/long': b'HTTP/1.1 200 OK\r\nx: ' + bytes(20000).replace(b'\0', b'a'),
    '/circle': response(302, b'', b'location: /circle'),
    '/ftp': response(302, b'', b'location: ftp://a/'),
    '/refused': response(302, b'', b'location: http://a:99999/'),
    '/nothing': response(302, b'', b'location: http://127.0.0.1:1/'),
}
NEVER_AGAIN = {
    'refused': (refused, {}, 'refused: '),
    'closed': (closed, {}, 'refused: the pool is closed'),
    'pool_timeout': (busy, {'max_connections': 1, 'pool_timeout': 0.01}, 'pool_timeout'),
    'pool-of-a-request': (busy_for_one, {'max_connections': 1}, 'waiting for a connection'),
    'body-that-is-too-short': (too_short, {}, 'content-length'),
    'body-that-begins': (begun(ValueError('no')), {}, 'the request body: no'),
    'body': (once, {}, 'body must return a new async iterator'),
    'too-long': (too_long, {}, 'max_header_length'),
    'too-many-redirects': (in_circles, {}, 'max_redirects'),
    'redirect-to-another-scheme': (to_another_scheme, {}, 'for its scheme'),
    'redirect-to-what-is-refused': (to_what_is_refused, {}, 'refused: '),
    'proxy-407': (plainly, {'get_connection': raising(ProxyError('no'))}, 'ProxyError'),
    'type-error': (plainly, {'get_connection': raising(TypeError('no'))}, 'TypeError'),
}
AGAIN = {
    'body-from-elsewhere': (begun(OSError('no')), {}, 'the request body: .*no'),
    'body-of-bad-json': (begun(json.JSONDecodeError('no', '', 0)), {}, 'the request body: no'),
    'redirect-to-nothing': (to_nothing, {}, 'connecting failed'),
    'proxy-502': (plainly, {'get_connection': raising(ServerError('no'))}, 'ServerError'),
    'get_connection': (plainly, {'get_connection': raising(OSError('no'))}, 'OSError'),
    'bad-json': (plainly, {'get_connection': raising(json.JSONDecodeError('no', '', 0))}, 'no'),
}


@pytest.mark.parametrize('given, options, text, attempts', [
    pytest.param(*row, attempts, id=name) for rows, attempts in ((NEVER_AGAIN, 1), (AGAIN, 3))
    for name, row in rows.items()])
@on_loops
async def test_what_would_fail_in_the_same_way_is_never_made_again(
        slept, given, options, text, attempts):
    async def script(peer):
        while True:
            head = await peer.read_head()
            await peer.send(ANSWERS[head.split(b' ')[1].decode()])

    async with Server(script) as server:
        request, close = Pool(**options)
        request, url, kwargs = await given(request, close, server)
        again = retry(request, ((Exception, (0, 0)),), should_retry=always)
        with pytest.raises(HttpError, match=text) as raised:
            await again(b'GET', url, **kwargs)
        assert is_lasting(raised.value) is (attempts == 1)
        BUSY.clear()
        await close()
    assert len(slept) == attempts - 1


@on_loops
async def test_an_exception_may_say_itself_that_it_lasts(slept):
    error = HttpDataError('text')
    error.__cause__ = KeyError()
    error.__cause__.is_lasting = True
    request, made = failing(error)
    with pytest.raises(HttpDataError):
        await retry(request)(b'GET', 'http://a/')
    assert len(made) == 1


@pytest.mark.parametrize('asked, waited', [(7, [7]), (0.5, [1]), (120.5, [])])
@on_loops
async def test_an_exception_may_say_itself_how_long_to_wait(slept, asked, waited):
    error = HttpDataError('text')
    error.retry_after = asked
    request, made = failing(error, error)
    with pytest.raises(HttpDataError):
        await retry(request, ((HttpDataError, (1,)),))(b'GET', 'http://a/')
    assert slept == waited
    assert len(made) == 1 + len(waited)


@on_loops
async def test_a_certificate_that_is_not_accepted_is_tried_again(slept):
    async with Server(None, certified('a.example')) as server, pool() as request:
        with pytest.raises(HttpTlsError) as raised:
            await retry(request)(b'GET', server.url)
    assert isinstance(raised.value.__cause__, ValueError)
    assert len(slept) == 3


# --------------------------------------------------------------------------------------- codes


@on_loops
async def test_codes_are_not_retried_unless_asked_for(slept):
    async with retried(response(503)) as (request, script):
        code, _, _ = await request()
    assert code == b'503'
    assert len(script.heads) == 1


@on_loops
async def test_chosen_codes_are_retried_each_with_its_intervals(slept):
    async with retried(
            response(503), response(429), response(503), OK,
            code_intervals=iter([(b'503', (0, 2)), (b'429', (3,))])) as (request, script):
        _, _, body = await request()
        assert await buffered(body) == b'ok'
    assert slept == [0, 3, 2]
    assert set(script.connections) == {0}


@on_loops
async def test_the_last_response_is_returned_whole(slept):
    async with retried(response(503, b'first'), response(503, b'last', b'retry-after: 1'),
                       code_intervals=((b'503', (1,)),)) as (request, _):
        code, headers, body = await request()
        assert code == b'503'
        assert headers == ((b'retry-after', b'1'), (b'content-length', b'4'))
        assert await buffered(body) == b'last'
    assert slept == [1]


@on_clock
async def test_a_response_that_is_not_wanted_does_not_keep_its_connection(slept):
    async def script(peer):
        await peer.read_head()
        if peer.index:
            await peer.send(OK)
        else:
            await peer.send(b'HTTP/1.1 503 No\r\ncontent-length: 1000\r\n\r\nand so on')
            is_sent.set()
            assert await peer.closed() == b''
            closed.set()

    is_sent, closed = asyncio.Event(), asyncio.Event()
    async with Server(script) as server, pool(max_connections=1) as request:
        again = retry(request, code_intervals=((b'503', (0,)),))
        task = asyncio.create_task(get(again, server.url))
        await is_sent.wait()
        await passing(0.999)
        assert not task.done()
        await passing(0.001)
        assert (await task)[2] == b'ok'
        await closed.wait()


@on_loops
async def test_the_connections_of_responses_that_are_not_returned_are_used_again(slept):
    async def script(peer):
        count = 0
        while True:
            await peer.read_head()
            count += 1
            if count > 100:
                await peer.send(OK)
            else:
                await peer.send(b'HTTP/1.1 503 No\r\ncontent-length: 4000\r\n\r\n', bytes(4000))

    async with Server(script) as server, pool() as request:
        again = retry(request, code_intervals=((b'503', (0,) * 100),))
        assert (await get(again, server.url))[2] == b'ok'
        assert len(server.peers) == 1


@pytest.mark.parametrize('chunks, unread', [
    ((bytes(63 * 1024),), 0), ((bytes(63 * 1024), b'', b''), 1),
    ((bytes(63 * 1024 + 1), b'', b''), 2), ((b'a',) * 100, 36),
    ((HttpDataError('bad'), b'a'), 1),
])
@on_loops
async def test_each_read_of_what_is_not_returned_counts_as_a_kibibyte_more(
        slept, chunks, unread):
    body = Content(*chunks)
    request, _ = failing((b'503', (), body), ANSWER)
    await retry(request, code_intervals=((b'503', (0,)),))(b'GET', 'http://a/')
    assert len(body.chunks) == unread
    assert body.is_closed


@on_loops
async def test_a_body_that_is_stuck_is_waited_for_no_longer_than_its_bound(slept, monkeypatch):
    assert lowhaio_retry.DRAIN_TIMEOUT == 1
    monkeypatch.setattr(lowhaio_retry, 'DRAIN_TIMEOUT', 0.01)
    body = Content(b'a', None)
    request, _ = failing((b'503', (), body), ANSWER)
    await retry(request, code_intervals=((b'503', (0,)),))(b'GET', 'http://a/')
    assert body.is_closed
    assert asyncio.current_task().cancelling() == 0


def after(seconds):
    return b'retry-after: ' + formatdate(NOW + seconds, usegmt=True).encode()


@pytest.mark.parametrize('field, waited', [
    pytest.param(b'retry-after: 7', 7, id='seconds'),
    pytest.param(b'Retry-After: 0120', 120, id='the-longest'),
    pytest.param(b'retry-after: 0', 2, id='less-than-the-interval'),
    pytest.param(b'retry-after: 120.1', None, id='too-long'),
    pytest.param(b'retry-after: ' + b'9' * 5000, None, id='far-too-long'),
    pytest.param(after(30), 30, id='date'),
    pytest.param(after(120), 120, id='the-longest-date'),
    pytest.param(after(121), None, id='date-too-far'),
    pytest.param(after(-1000), 2, id='date-of-the-past'),
    pytest.param(b'retry-after: Friday, 15-Jan-27 08:00:30 GMT', 30, id='rfc-850'),
    pytest.param(b'retry-after: Friday, 15-Jan-77 08:00:30 GMT', None, id='in-fifty-years'),
    pytest.param(b'retry-after: Saturday, 15-Jan-78 08:00:30 GMT', 2, id='fifty-years-ago'),
    pytest.param(b'retry-after: Friday, 15-Jan-27 07:59:60 GMT', 2, id='leap-second'),
    pytest.param(b'retry-after: Friday, 15-Jan-27 08:00:60 GMT', 59, id='leap-second-ahead'),
    pytest.param(after(30) + b'\r\ndate: ' + after(-7)[13:], 37, id='by-its-own-date'),
    pytest.param(after(1030) + b'\r\ndate: Fri Jan 15 08:17:00 2027', 10, id='by-its-own-asctime'),
    pytest.param(after(30) + b'\r\ndate: now', 30, id='by-no-date'),
    pytest.param(b'retry-after: Fri, 15 Foo 2027 08:00:30 GMT', 2, id='no-such-month'),
    pytest.param(b'retry-after: Fri, 32 Jan 2027 08:00:30 GMT', 2, id='no-such-day'),
    pytest.param(b'retry-after: Fri, 15 Jan 2027 08:00:30 +0100', 2, id='not-gmt'),
    pytest.param(b'retry-after: Fri Jan 15 08:00:30 2027', 30, id='asctime'),
    pytest.param(b'retry-after: Fri Jan  1 08:00:30 2027', 2, id='asctime-with-one-digit'),
    pytest.param(b'retry-after: soon', 2, id='rubbish'),
    pytest.param(b'retry-after: -5', 2, id='negative'),
    pytest.param(b'retry-after: 5.5', 5.5, id='fraction'),
    pytest.param(b'retry-after:', 2, id='empty'),
    pytest.param(b'retry-after: \xb2\xff', 2, id='not-ascii'),
    pytest.param(b'retry-after: Fri, 15 Jan 99999 08:00:30 GMT', 2, id='no-such-year'),
    pytest.param(b'retry-after: Fri, 15 Jan ' + b'9' * 30 + b' 08:00:30 GMT', 2, id='overflow'),
    pytest.param(b'retry-after: 7\r\nretry-after: 9', 7, id='two'),
])
@on_loops
async def test_retry_after_is_honoured(slept, field, waited):
    async with retried(response(503, b'', field), OK,
                       code_intervals=((b'503', (2,)),)) as (request, _):
        code, _, body = await request()
        await body.aclose()
    assert code == (b'503' if waited is None else b'200')
    assert slept == ([] if waited is None else [waited])


@on_loops
async def test_max_retry_after(slept):
    async with retried(response(503, b'', b'retry-after: 3600'), OK, max_retry_after=3600,
                       code_intervals=((b'503', (2,)),)) as (request, _):
        assert (await request())[0] == b'200'
    assert slept == [3600]


@on_loops
async def test_a_code_is_not_retried_if_should_retry_says_so(slept):
    async with retried(response(503), code_intervals=((b'503', (2,)),),
                       should_retry=if_idempotent) as (request, script):
        assert (await request(b'POST'))[0] == b'503'
    assert len(script.heads) == 1


@on_loops
async def test_a_response_is_judged_by_its_code_and_headers(slept):
    def should_retry_response(*args):
        asked.append(args)
        return dict(args[2]).get(b'x-limit') == b'0'

    asked = []
    async with retried(
            response(403, b'', b'x-limit: 0'), response(403, b'', b'x-limit: 1'),
            code_intervals=((b'403', (1, 1)),), should_retry=if_stale,
            should_retry_response=should_retry_response) as (request, script):
        assert (await request(b'POST'))[0] == b'403'
    assert asked == [(b'POST', b'403', ((b'x-limit', b'%d' % limit), (b'content-length', b'0')))
                     for limit in range(2)]
    assert len(script.heads) == 2


# ---------------------------------------------------------------------------------- the budget


@on_loops
async def test_a_wait_that_would_pass_the_budget_is_not_begun():
    errors = [HttpDataError('first'), HttpDataError('second')]
    request, made = failing(*errors)
    again = retry(request, ((HttpDataError, (0, 1000)),), max_total=500)
    with pytest.raises(HttpDataError) as raised:
        await again(b'GET', 'http://a/')
    assert raised.value is errors[1]
    assert len(made) == 2

    last = (b'503', (), Content(b'a'))
    request, made = failing((b'503', (), Content()), last)
    again = retry(request, code_intervals=((b'503', (0, 1000)),), max_total=500)
    assert await again(b'GET', 'http://a/') == last
    assert last[2].chunks == [b'a']


def hanging_after(*outcomes):
    async def request(method, url, **kwargs):
        if not left:
            await asyncio.Event().wait()
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    left = list(outcomes)
    return request


@pytest.mark.parametrize('outcomes, attempt, before, started', [
    ((), 1, '', False),
    ((HttpDataError('cut off'),), 2, ' (the attempt before: cut off)', False),
    ((HttpDataError('cut off'), HttpConnectionError('no')), 3, ' (the attempt before: no)', False),
    (((b'503', (), Content()), HttpConnectionError('no')), 3, ' (the attempt before: no)', True),
    (((b'503', (), Content()),), 2, ' (the attempt before: 503)', True),
])
@on_clock
async def test_an_attempt_that_passes_the_budget_is_cut_off(outcomes, attempt, before, started):
    async def ask():
        try:
            await again(b'GET', 'http://user:password@a:80/path?query')
        finally:
            assert asyncio.current_task().cancelling() == 0

    again = retry(hanging_after(*outcomes), ((Exception, (0, 0, 0, 0)),),
                  code_intervals=((b'503', (0,)),), max_total=20)
    with pytest.raises(HttpDataError) as raised:
        await (await ends_after(20, ask()))
    assert str(raised.value) == (
        f'GET http://a:80: max_total, 20 seconds, passed in attempt {attempt}{before}')
    last = outcomes[-1] if outcomes else None
    if isinstance(last, Exception):
        assert raised.value.__cause__ is last
    else:
        assert isinstance(raised.value.__cause__, TimeoutError)
    assert raised.value.response_started is started


@on_loops
async def test_a_budget_that_is_not_passed_changes_nothing(slept):
    async with retried(None, OK, max_total=1000) as (request, _):
        _, _, body = await request()
        assert await buffered(body) == b'ok'
    request, _ = failing(TimeoutError('of its own'))
    with pytest.raises(TimeoutError, match='of its own'):
        await retry(request, (), max_total=1000)(b'GET', 'http://a/')


@on_loops
async def test_a_url_that_is_none_is_not_shown_in_the_error_of_the_budget():
    with pytest.raises(HttpDataError, match='^GET : max_total'):
        await retry(hanging_after(), max_total=0)(b'GET', 'a')


# --------------------------------------------------------------------------------- whole bodies

CUT_OFF = b'HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc'


def then_closing(raw):
    """A script whose connections answer one request each: with these bytes, and then they end."""
    async def script(peer):
        await peer.read_head()
        lines.append(peer.index)
        await peer.send(raw[min(peer.index, len(raw) - 1)])

    lines = []
    return script, lines


@pytest.mark.parametrize('method, attempts', [(b'GET', 3), (b'PUT', 3), (b'POST', 1)])
@on_loops
async def test_a_body_that_is_cut_off_is_asked_for_again(slept, method, attempts):
    script, lines = then_closing((CUT_OFF, CUT_OFF, CUT_OFF + b'defghij'))
    async with Server(script) as server, pool() as request:
        again = retry(request, max_buffered=1000)
        if attempts == 3:
            code, headers, body = await again(method, server.url)
            assert (code, headers) == (b'200', ((b'content-length', b'10'),))
            assert await buffered(body) == b'abcdefghij'
            assert [chunk async for chunk in body] == []
        else:
            with pytest.raises(HttpConnectionClosedError, match='7 bytes before the end'):
                await again(method, server.url)
    assert len(lines) == attempts
    assert len(slept) == attempts - 1


@on_loops
async def test_a_body_that_is_longer_than_max_buffered_goes_on_as_it_comes(slept):
    error = HttpDataError('cut off')
    inner = Content(b'ab', b'cd', b'ef', error)
    request, made = failing((b'200', (), inner))
    code, headers, body = await retry(request, max_buffered=3)(b'GET', 'http://a/')
    assert inner.chunks == [b'ef', error]
    assert aiter(body) is body
    assert [await anext(body) for _ in range(3)] == [b'ab', b'cd', b'ef']
    with pytest.raises(HttpDataError) as raised:
        await anext(body)
    assert raised.value is error
    assert len(made) == 1


@on_loops
async def test_a_body_in_memory_has_all_that_the_body_has(slept):
    inner = Content(b'ab', b'cd')
    request, _ = failing((b'200', (), inner))
    _, _, body = await retry(request, max_buffered=4)(b'GET', 'http://a/')
    assert body.trailers == inner.trailers
    assert body.hops is inner.hops
    with pytest.raises(AttributeError):
        _ = body.unknown
    assert not inner.is_closed
    await body.aclose()
    assert inner.is_closed
    # Reading on raises, so that the body does not seem to be empty.
    for reading in anext(body), buffered(body):
        with pytest.raises(HttpDataError) as raised:
            await reading
        assert str(raised.value) == (
            'reading the response body: the response body was closed before its end')
        assert type(raised.value.__cause__) is ConnectionAbortedError
        assert (raised.value.response_started, raised.value.phase) == (True, 'content')


@on_loops
async def test_the_repr_of_a_body_in_memory_counts_what_is_held_and_shows_none_of_it(slept):
    request, _ = failing((b'200', (), Content(b'abc', b'de')))
    _, _, body = await retry(request, max_buffered=5)(b'GET', 'http://a/')
    assert re.fullmatch('<BegunBody 5 bytes held of <.*Content object at .*>>', repr(body))
    assert await anext(body) == b'abc'
    assert repr(body).startswith('<BegunBody 2 bytes held of <')


@on_loops
async def test_a_body_in_memory_that_was_read_has_ended_when_it_is_closed(slept):
    request, _ = failing((b'200', (), Content(b'ab')))
    _, _, body = await retry(request, max_buffered=4)(b'GET', 'http://a/')
    assert await buffered(body) == b'ab'
    await body.aclose()
    assert [chunk async for chunk in body] == []


@pytest.mark.parametrize('code', [b'101', b'503'])
@on_loops
async def test_bodies_of_101_and_of_codes_that_are_tried_again_are_not_read(slept, code):
    inner = Content(None)
    request, _ = failing((code, (), inner))
    _, _, body = await retry(
        request, max_buffered=4, code_intervals=((b'503', ()),))(b'GET', 'http://a/')
    assert body is inner
    assert inner.chunks == [None]


@on_loops
async def test_cancelled_while_it_reads_it_closes_the_body():
    inner = Content(b'a', None)
    request, _ = failing((b'200', (), inner))
    task = asyncio.create_task(retry(request, max_buffered=4)(b'GET', 'http://a/'))
    await turns(3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert inner.is_closed


@on_loops
async def test_a_body_that_trickles_is_cut_off_by_the_budget():
    inner = Content(b'a', None)
    request, _ = failing((b'200', (), inner))
    with pytest.raises(HttpDataError, match='max_total, 0.01 seconds, passed in attempt 1'):
        await retry(request, max_buffered=4, max_total=0.01)(b'GET', 'http://a/')
    assert inner.is_closed


# --------------------------------------------------------------------------------- the options


@on_loops
async def test_on_retry_is_told_of_each_wait(slept):
    errors = [HttpDataError('cut off'), HttpConnectionError('no')]
    request, _ = failing(errors[0], (b'503', ((b'a', b'b'),), Content()), errors[1], ANSWER)
    told = []
    await retry(request, code_intervals=((b'503', (7,)),),
                on_retry=lambda *args: told.append(args))(b'GET', 'http://a/')
    assert told == [(1, 0, errors[0]), (2, 7, (b'503', ((b'a', b'b'),))), (3, 0, errors[1])]
    assert slept == [0, 7, 0]


@on_loops
async def test_the_repr_of_the_attempts_shows_the_origin_only(slept):
    def on_retry(attempt, seconds, outcome):
        shown.append(repr(inspect.currentframe().f_back.f_locals['self']))

    shown = []
    request, _ = failing(HttpConnectionError('one'), HttpDataError('two'), ANSWER)
    await retry(request, on_retry=on_retry)(b'GET', 'http://user:hidden@a/path?hidden')
    assert shown == [
        "<Attempts b'GET' http://a count=1 was_sent=False response_started=False>",
        "<Attempts b'GET' http://a count=2 was_sent=True response_started=False>"]


@on_loops
async def test_jitter_can_be_turned_off(slept):
    request, _ = failing(*[HttpConnectionError()] * 3, ANSWER)
    await retry(request, jitter=0)(b'GET', 'http://a/')
    assert slept == [0, 0.5, 1]


@on_loops
async def test_jitter_adds_up_to_its_share(slept):
    random.seed(0)
    request, _ = failing(*[HttpDataError()] * 300, ANSWER)
    await retry(request, ((HttpDataError, [4] * 300),), jitter=0.5)(b'GET', 'http://a/')
    assert len(set(slept)) > 290
    assert 4 <= min(slept) < 4.1
    assert 5.9 < max(slept) <= 6


@pytest.mark.parametrize('args, kwargs', [
    ((None,), {}),
    ((get, None), {}),
    ((get, ((ValueError,),)), {}),
    ((get, ((BaseException, (0,)),)), {}),
    ((get, ((asyncio.CancelledError, (0,)),)), {}),
    ((get, ((ValueError(), (0,)),)), {}),
    ((get, ((ValueError, 0),)), {}),
    ((get, ((ValueError, (-1,)),)), {}),
    ((get, ((ValueError, ('1',)),)), {}),
    ((get, ((ValueError, (float('inf'),)),)), {}),
    ((get, ((ValueError, (float('nan'),)),)), {}),
    ((get,), {'code_intervals': ((503, (0,)),)}),
    ((get,), {'code_intervals': ((b'5xx', (0,)),)}),
    ((get,), {'code_intervals': ((b'503', (-1,)),)}),
    ((get,), {'should_retry': None}),
    ((get,), {'max_retry_after': -1}),
    ((get,), {'max_retry_after': None}),
    ((get,), {'jitter': -0.1}),
    ((get,), {'max_total': -1}),
    ((get,), {'max_total': '1'}),
    ((get,), {'max_buffered': -1}),
    ((get,), {'max_buffered': 1.5}),
    ((get,), {'on_retry': 1}),
    ((get,), {'should_retry_response': True}),
])
def test_a_bad_argument_fails_at_once(args, kwargs):
    with pytest.raises((TypeError, ValueError)):
        retry(*args, **kwargs)


# -------------------------------------------------------------------------------- the README

BLOCKS = python_blocks(pathlib.Path(__file__).with_name('README.md'))


@pytest.mark.parametrize('block, responses', [
    pytest.param(block, responses, id=responses[-1]) for block, responses in zip(BLOCKS, [
        (None, 'defaults'), (None, 'the-same'), (None, response(503), 'options'),
        (None, 'whole')], strict=True)])
def test_a_block_of_the_readme_runs_as_it_stands(block, responses, capsys, slept):
    script = Answering(*responses[:-1], response(200, b'Hello'))
    with internet(script):
        run_block(block)
    assert capsys.readouterr().out == "b'200' b'Hello'\n"
    assert len(script.heads) == len(responses)
    assert len(slept) == len(responses) - 1


def test_the_readme_tells_the_defaults():
    [block] = [block for block in BLOCKS if '(0, 1, 2, 4)' in block]
    pairs = re.findall(r'\((\w+), \((.*?)\)\)', block)
    assert pairs == [(kind.__name__, str(intervals)[1:-1])
                     for kind, intervals in lowhaio_retry.DEFAULT_INTERVALS]
