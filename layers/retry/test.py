"""Tests of lowhaio_retry: what the servers see, and what is waited for in between."""

import asyncio
import contextlib
import pathlib
import random
import re
import time
from email.utils import formatdate

import pytest
from harness import (
    OK,
    Answering,
    Server,
    get,
    internet,
    on_loops,
    pool,
    python_blocks,
    response,
    run_block,
    turns,
)

import lowhaio_retry
from lowhaio import (
    HttpConnectionClosedError,
    HttpConnectionError,
    HttpDataError,
    HttpError,
    buffered,
    streamed,
)
from lowhaio_retry import always, if_idempotent, if_stale, retry

NOW = 1_800_000_000
ANSWER = (b'200', (), None)


@pytest.fixture
def slept(monkeypatch):
    """No time passes, but what was to be waited for is kept."""
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
    """Yields a request that is retried, and the script that answers it."""
    script = Answering(*responses)
    async with Server(script) as server, pool() as request:
        again = retry(request, **options)
        yield lambda method=b'GET', **kwargs: again(method, server.url, **kwargs), script


def failing(*errors):
    """A request that raises one after the other, or returns what is no exception."""
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


@on_loops
async def test_what_can_not_be_connected_to_is_tried_again_three_times_at_once(slept):
    async with Server(None) as server:
        url = server.url
    async with pool() as request:
        with pytest.raises(HttpConnectionError, match='connecting failed'):
            await retry(request)(b'GET', url)
    assert slept == [0, 0, 0]


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
    (b'POST', error(HttpDataError, True, False), False, True),
    (b'POST', error(HttpDataError, True, True), False, False),
    (b'POST', error(HttpDataError, False, True), False, False),
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


@on_loops
async def test_a_response_that_is_not_wanted_does_not_keep_its_connection(slept):
    async def script(peer):
        await peer.read_head()
        if peer.index:
            await peer.send(OK)
        else:
            await peer.send(b'HTTP/1.1 503 No\r\ncontent-length: 1000\r\n\r\nand so on')
            assert await peer.closed() == b''
            closed.set()

    closed = asyncio.Event()
    async with Server(script) as server, pool(max_connections=1) as request:
        again = retry(request, code_intervals=((b'503', (0,)),))
        assert (await get(again, server.url))[2] == b'ok'
        await closed.wait()


def after(seconds):
    return b'retry-after: ' + formatdate(NOW + seconds, usegmt=True).encode()


@pytest.mark.parametrize('field, waited', [
    pytest.param(b'retry-after: 7', 7, id='seconds'),
    pytest.param(b'Retry-After: 060', 60, id='the-longest'),
    pytest.param(b'retry-after: 0', 2, id='less-than-the-interval'),
    pytest.param(b'retry-after: 61', None, id='too-long'),
    pytest.param(b'retry-after: ' + b'9' * 5000, None, id='far-too-long'),
    pytest.param(after(30), 30, id='date'),
    pytest.param(after(60), 60, id='the-longest-date'),
    pytest.param(after(61), None, id='date-too-far'),
    pytest.param(after(-1000), 2, id='date-of-the-past'),
    pytest.param(b'retry-after: Friday, 15-Jan-27 08:00:30 GMT', 30, id='rfc-850'),
    pytest.param(b'retry-after: Fri Jan 15 08:00:30 2027', 30, id='asctime'),
    pytest.param(b'retry-after: soon', 2, id='rubbish'),
    pytest.param(b'retry-after: -5', 2, id='negative'),
    pytest.param(b'retry-after: 5.5', 2, id='fraction'),
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


# --------------------------------------------------------------------------------- the options


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
])
def test_a_bad_argument_fails_at_once(args, kwargs):
    with pytest.raises((TypeError, ValueError)):
        retry(*args, **kwargs)


# -------------------------------------------------------------------------------- the README

BLOCKS = python_blocks(pathlib.Path(__file__).with_name('README.md'))


@pytest.mark.parametrize('block, responses', [
    pytest.param(block, responses, id=responses[-1]) for block, responses in zip(BLOCKS, [
        (None, 'defaults'), (None, 'the-same'), (None, response(503), 'options')], strict=True)])
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
