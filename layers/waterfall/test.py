"""Tests of lowhaio_waterfall: what timelines hold, and how they are shown.

No test asserts how long anything took. What is asserted of times is that phases tile the whole.
"""

import asyncio
import contextlib
import html.parser
import io
import json
import os
import pathlib
import random
import re
import runpy
import signal
import subprocess
import sys
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from rich.console import Console

from lowhaio import (
    BodyEnded,
    BodySent,
    ConnectionAttempted,
    ConnectionClosed,
    ConnectionFacts,
    ConnectionReleased,
    ConnectionTaken,
    HeadReceived,
    HeadSent,
    HttpConnectionError,
    HttpDataError,
    NameResolved,
    Phase,
    PlaceAwaited,
    RequestFailed,
    RequestStarted,
    ResponseStarted,
    TlsNegotiated,
    buffered,
    streamed,
)
from lowhaio_waterfall import (
    PHASES,
    Attempt,
    Connection,
    Failure,
    Recorder,
    Response,
    Sizes,
    Span,
    Waterfall,
    har,
    main,
    timings,
)
from lowhaio_waterfall import html as page_of
from lowhaio_waterfall.redaction import redacted
from lowhaio_waterfall.terminal import figures
from tests.harness import (
    OK,
    Answering,
    Server,
    ThreadServer,
    always,
    authority,
    get,
    holding,
    internet,
    on_loops,
    on_one_loop,
    pool,
    python_blocks,
    receive_end,
    receive_head,
    response,
    run_block,
    server_context,
    trusting,
)

FACTS = ConnectionFacts(('192.0.2.2', 443), ('192.0.2.9', 50000), 'TLSv1.3',
                        ('TLS_AES_256_GCM_SHA384', 'TLSv1.3', 256), b'')
PLAIN = ConnectionFacts(('2001:db8::1', 80, 0, 0), '/a.sock', None, None, None)


def started(time=0, number=1, target=b'/path?a=b', origin='https://www.example.com:443'):
    return RequestStarted(time, number, b'GET', origin, target)


# A request that takes 100 seconds, and is at something else every 10.
WHOLE = (
    started(),
    PlaceAwaited(10, 1, 0, None),
    NameResolved(20, 1, 10, 'www.example.com', ('192.0.2.1', '192.0.2.2'), None),
    ConnectionAttempted(30, 1, 20, '192.0.2.1:443', None, ConnectionRefusedError('refused')),
    ConnectionAttempted(31, 1, 25, '192.0.2.3:443', None, None),
    ConnectionAttempted(31, 1, 22, '192.0.2.2:443', 7, None),
    TlsNegotiated(40, 1, 31, 7, 'TLSv1.3', 'TLS_AES_256_GCM_SHA384', False, None),
    ConnectionTaken(42, 1, 7, 1, FACTS),
    HeadSent(45, 1, 120),
    BodySent(50, 1, 3_000),
    ResponseStarted(70, 1),
    HeadReceived(80, 1, b'200', b'HTTP/1.1', ((b'content-type', b'text/html'),), 300),
    BodyEnded(100, 1, 1_234_567, None),
    ConnectionReleased(100, 7, 'https://www.example.com:443'),
    ConnectionClosed(200, 7, 'https://www.example.com:443', 30, 1, 'keep_alive_timeout'),
)


def recorded(*events, **options):
    """The timelines of events."""
    recorder = Recorder(**options)
    for event in events:
        recorder(event)
    return recorder.timelines


def one(*events):
    """The timeline of the events of one request."""
    [timeline] = recorded(*events)
    return timeline


def names(timeline):
    return [span.name for span in timeline.phases]


def tiles(timeline):
    """Check that the phases tile the whole time of the request, and return their names."""
    phases = timeline.phases
    assert all(span.duration > 0 for span in phases)
    assert all(before.ended == after.started for before, after in pairwise(phases))
    if phases:
        assert (phases[0].started, phases[-1].ended) == (timeline.started, timeline.last)
    assert sum(timeline.durations.values()) == pytest.approx(timeline.duration)
    return [span.name for span in phases]


# ------------------------------------------------------------------------------- of the events


def test_the_phases_of_a_request_tile_its_time():
    timeline = one(*WHOLE)
    assert tiles(timeline) == [
        'place', 'lookup', 'connect', 'tls', 'client', 'send', 'wait', 'head', 'body']
    assert timeline.phases[2:5] == (
        Span('connect', 20, 31), Span('tls', 31, 40), Span('client', 40, 42))
    assert timeline.durations == {
        'place': 10, 'lookup': 10, 'connect': 11, 'tls': 9, 'client': 2, 'send': 8, 'wait': 20,
        'head': 10, 'body': 20}
    assert timeline.duration == 100


def test_a_timeline_has_what_the_events_tell():
    timeline = one(*WHOLE)
    assert (timeline.number, timeline.method, timeline.url) == (
        1, 'GET', 'https://www.example.com/path?a=b')
    assert timeline.attempts == [
        Attempt(20, 30, '192.0.2.1:443', 'failed', None, Failure(
            'ConnectionRefusedError', 'refused', None)),
        Attempt(25, 31, '192.0.2.3:443', 'given up', None, None),
        Attempt(22, 31, '192.0.2.2:443', 'connected', 7, None)]
    assert timeline.tls[2:] == ('TLSv1.3', 'TLS_AES_256_GCM_SHA384', False, None)
    assert timeline.connection == Connection(
        7, 1, '192.0.2.2:443', '192.0.2.9:50000', 'TLSv1.3', 'TLS_AES_256_GCM_SHA384')
    assert timeline.sizes == Sizes(120, 3_000, 300, 1_234_567)
    assert timeline.response == Response(
        200, 'HTTP/1.1', ((b'content-type', b'text/html'),), '')
    assert timeline.times == {
        'connection_taken': 42, 'head_sent': 45, 'body_sent': 50, 'response_started': 70,
        'head_received': 80, 'ended': 100}
    assert timeline.failure is None
    assert timeline.closing == 'keep_alive_timeout'


@pytest.mark.parametrize('length, phase', [
    (1, []), (2, ['place']), (3, ['place', 'lookup']),
    (7, ['place', 'lookup', 'connect', 'tls']),
    (8, ['place', 'lookup', 'connect', 'tls', 'client']),
])
def test_a_timeline_can_be_looked_at_before_its_end(length, phase):
    timeline = one(*WHOLE[:length])
    assert tiles(timeline) == phase
    assert 'ended' not in timeline.times


HEAD = HeadReceived(40, 1, b'200', b'HTTP/1.1', (), 10)
UNSENT = HttpDataError('cut off')
UNSENT.phase = Phase.SEND


@pytest.mark.parametrize('events, phases', [
    pytest.param([HeadSent(20, 1, 9), ResponseStarted(30, 1), HEAD, BodyEnded(50, 1, 0, None)],
                 [('send', 20), ('wait', 30), ('head', 40), ('body', 50)], id='no body'),
    pytest.param([HeadSent(20, 1, 9), ResponseStarted(30, 1), HEAD, BodySent(45, 1, 9),
                  BodyEnded(50, 1, 0, None)],
                 [('send', 30), ('head', 40), ('body', 50)], id='early response'),
    pytest.param([HeadSent(20, 1, 9), ResponseStarted(30, 1), BodySent(35, 1, 9), HEAD,
                  BodyEnded(50, 1, 0, None)],
                 [('send', 30), ('head', 40), ('body', 50)], id='interim response'),
    pytest.param([HeadSent(20, 1, 9), RequestFailed(50, 1, UNSENT)], [('send', 50)],
                 id='not sent'),
    pytest.param([HeadSent(20, 1, 9), RequestFailed(50, 1, HttpDataError('no answer'))],
                 [('send', 20), ('wait', 50)], id='not answered'),
    pytest.param([HeadSent(20, 1, 9), BodySent(30, 1, 9), RequestFailed(50, 1, UNSENT)],
                 [('send', 30), ('wait', 50)], id='sent whole'),
    pytest.param([RequestFailed(50, 1, asyncio.CancelledError())], [('send', 50)],
                 id='nothing sent'),
])
def test_what_comes_after_the_connection(events, phases):
    timeline = one(started(), ConnectionTaken(10, 1, 3, 2, PLAIN), *events)
    assert tiles(timeline) == ['client', *(name for name, _ in phases)]
    assert [span.ended for span in timeline.phases[1:]] == [end for _, end in phases]


def test_where_two_things_happen_at_once_the_later_one_counts():
    timeline = one(
        started(),
        ConnectionAttempted(30, 1, 10, 'a', None, OSError('no')),
        NameResolved(50, 1, 20, 'a', ('b',), None),
        ConnectionAttempted(60, 1, 40, 'b', 1, None))
    assert [(span.name, span.ended) for span in timeline.phases] == [
        ('client', 10), ('connect', 30), ('lookup', 40), ('connect', 60)]


def test_whatever_the_events_are_phases_tile_the_time():
    numbers = random.Random(0)
    for _ in range(100):
        times = sorted(numbers.choices(range(30), k=len(WHOLE)))
        events = [event._replace(time=time) for event, time in zip(WHOLE, times, strict=True)
                  if numbers.random() < 0.8 or isinstance(event, RequestStarted)]
        events = [event._replace(started=numbers.randint(times[0], event.time))
                  if hasattr(event, 'started') else event for event in events]
        assert set(tiles(one(*events))) <= set(PHASES)


def test_the_connection_of_a_failed_handshake_is_known():
    timeline = one(*WHOLE[:6], TlsNegotiated(40, 1, 31, 7, None, None, False, OSError('bad')),
                   RequestFailed(41, 1, HttpConnectionError('no')))
    assert timeline.connection is None
    assert entry_of(timeline)['connection'] == '7'
    assert timeline.tls.failure == Failure('OSError', 'bad', None)
    assert timeline.failure == Failure('HttpConnectionError', 'no', '')
    assert tiles(timeline)[-2:] == ['tls', 'client']


def test_a_reason_that_a_connection_closes_for_is_told_to_its_last_request():
    first, second, third = recorded(
        started(), ConnectionTaken(1, 1, 7, 1, FACTS), BodyEnded(2, 1, 0, None),
        started(3, 2), ConnectionTaken(4, 2, 7, 2, FACTS), BodyEnded(5, 2, 0, None),
        ConnectionClosed(6, 7, '', 0, 2, 'it idled'),
        ConnectionClosed(6, 8, '', 0, 0, 'nobody took it'), started(9, 3))
    assert (first.closing, second.closing, third.closing) == (None, 'it idled', None)


@pytest.mark.parametrize('origin, target, url', [
    ('https://a.example:443', b'/b?c', 'https://a.example/b?c'),
    ('http://a.example:80', b'/', 'http://a.example/'),
    ('http://a.example:443', b'/', 'http://a.example:443/'),
    ('http://[::1]:8080', b'/', 'http://[::1]:8080/'),
    ('https://a.example:443', b'*', 'https://a.example/'),
    ('http://proxy.example:3128', b'HTTP://a.example/b', 'HTTP://a.example/b'),
])
def test_the_url_of_a_timeline(origin, target, url):
    assert one(started(0, 1, target, origin)).url == url


def test_a_recorder_keeps_the_last_requests():
    recorder = Recorder(max_requests=2)
    for number in range(1, 4):
        recorder(started(number, number))
    recorder(BodyEnded(9, 1, 5, None))  # nobody asks for it any more
    assert [each.number for each in recorder.timelines] == [2, 3]
    assert repr(recorder) == '<Recorder 2 of at most 2 requests>'
    recorder.clear()
    assert recorder.timelines == ()


def test_on_end_is_called_with_each_timeline_that_has_ended():
    ended = []
    first, second, _ = recorded(
        started(), started(1, 2), started(1, 3), RequestFailed(2, 2, OSError()),
        BodyEnded(3, 1, 5, None), on_end=ended.append)
    assert ended == [second, first]


@pytest.mark.parametrize('options, error, message', [
    ({'max_requests': 0}, ValueError, 'max_requests must be a number, 1 or more, got 0'),
    ({'max_requests': '1'}, ValueError, "max_requests must be a number, 1 or more, got '1'"),
    ({'on_end': 1}, TypeError, 'on_end must be a function, got 1'),
])
def test_a_recorder_refuses_what_makes_no_sense(options, error, message):
    with pytest.raises(error, match=f'^{re.escape(message)}$'):
        Recorder(**options)


def test_the_repr_of_a_timeline_has_no_secret():
    assert repr(one(started())) == (
        '<Timeline 1 GET https://www.example.com:443 open 0.000000>')
    assert repr(one(*WHOLE)).endswith(' ended 100.000000>')
    assert repr(one(started(), RequestFailed(1, 1, OSError()))).endswith(' failed 1.000000>')


def test_timelines_hold_no_exception():
    error = OSError('refused')
    before = sys.getrefcount(error)
    timeline = one(started(), ConnectionAttempted(1, 1, 0, 'a', None, error),
                   NameResolved(1, 1, 0, 'a', (), error), RequestFailed(2, 1, error))
    assert str(timeline.failure) == 'OSError: refused'
    assert str(Failure.of(asyncio.CancelledError())) == 'CancelledError'
    assert sys.getrefcount(error) == before


# ------------------------------------------------------------------------------- of requests


@contextlib.asynccontextmanager
async def recording(script, scheme='http', **options):
    """Yield a recorder, the `request` of its pool, and a server that runs the script."""
    recorder = Recorder()
    async with Server(script, server_context() if scheme == 'https' else None) as server:
        async with pool(on_event=recorder, get_ssl_context=trusting, **options) as request:
            yield recorder, request, server


@on_loops
async def test_requests_of_a_pool_are_recorded():
    async with recording(Answering(OK), 'https', get_dns_resolver=always('127.0.0.1')) as (
            recorder, request, server):
        url = f'https://name.test:{server.port}/'
        await get(request, url)
        await get(request, url)
        first, second = recorder.timelines
    before = datetime.now(UTC)
    assert [name for name in tiles(first) if name != 'client'] == [
        'lookup', 'connect', 'tls', 'send', 'wait', 'head', 'body']
    assert not {'connect', 'tls'} & set(tiles(second))
    assert first.started < first.times['ended'] <= second.started < second.times['ended']
    assert first.started_at < second.started_at < before
    assert (before - first.started_at).total_seconds() < 60
    [attempt] = first.attempts
    assert attempt.peer == first.connection.peer == f'127.0.0.1:{server.port}'
    assert first.tls.version == second.connection.tls_version == 'TLSv1.3'
    assert second.tls is None
    assert [each.connection[:2] for each in (first, second)] == [(1, 1), (1, 2)]
    assert first.sizes.body == 2


@on_loops
async def test_a_request_that_fails_is_recorded():
    async with recording(Answering(None)) as (recorder, request, server):
        with pytest.raises(HttpDataError):
            await request(b'GET', server.url)
        [timeline] = recorder.timelines
    assert timeline.failure.type == 'HttpConnectionClosedError'
    assert timeline.failure.phase == 'head'
    assert tiles(timeline)[-1] == 'wait'
    assert timeline.closing


@on_loops
async def test_around_a_request_the_recorder_learns_what_events_do_not_tell():
    async with recording(Answering(response(404, b'what'))) as (recorder, request, server):
        begun = []
        noted = recorder.around(request, max_content=3, on_start=begun.append)
        _, _, body = await noted(b'PUT', server.url, headers=iter(((b'content-length', b'5'),)),
                                 body=streamed(b'12345'))
        assert aiter(body) is body
        assert body.http_version == b'HTTP/1.1'
        assert await buffered(body) == b'what'
        assert repr(body).startswith('<NotedBody 3 bytes noted of ')
        await body.aclose()
        await get(request, server.url)
        timeline, other = recorder.timelines
    assert begun == [timeline]
    assert timeline.response.reason == 'Reason'
    assert timeline.headers == ((b'content-length', b'5'),)
    assert (timeline.sent, timeline.received) == (b'123', b'wha')
    assert (timeline.sizes.sent_body, timeline.sizes.body) == (5, 4)
    assert (other.response.reason, other.headers, other.received) == ('', (), b'')


@on_one_loop
async def test_around_takes_what_the_pool_takes_for_headers_and_refuses_nothing_by_itself():
    async with recording(Answering(OK)) as (recorder, request, server):
        await get(recorder.around(request), server.url, headers=None)
        with pytest.raises(HttpConnectionError, match='refused: headers must be pairs'):
            await recorder.around(request)(b'GET', server.url, headers=5)
        assert [each.headers for each in recorder.timelines] == [()]


@on_one_loop
async def test_a_request_of_another_pool_is_left_alone():
    async with recording(Answering(OK)) as (recorder, request, server):
        stranger = Recorder()
        await get(stranger.around(recorder.around(request)), server.url)
        await get(stranger.around(request, max_content=3), server.url)
        assert stranger.timelines == ()
        assert [each.response.reason for each in recorder.timelines] == ['OK', '']


@on_one_loop
async def test_what_a_refused_request_was_given_is_not_that_of_the_next_one():
    async with recording(Answering(OK)) as (recorder, request, server):
        with pytest.raises(HttpConnectionError):
            await recorder.around(request)(b'GET', 'ftp://a/', headers=((b'a', b'b'),))
        await get(request, server.url)
        [timeline] = recorder.timelines
    assert timeline.headers == ()


@on_one_loop
async def test_a_request_within_the_beginning_of_another_one_is_its_own():

    async with Server(Answering(OK)) as server:
        recorder = Recorder()
        begun = []
        async with pool(on_event=recorder) as request:
            outer = recorder.around(request, on_start=begun.append)

            async def body():
                await get(request, server.url)
                yield b'a'

            await get(outer, server.url, headers=((b'content-length', b'1'),), body=body)
        first, second = recorder.timelines
    assert begun == [first]
    assert (len(first.headers), len(second.headers)) == (1, 0)


# ------------------------------------------------------------------------------------ secrets


@pytest.mark.parametrize('text, shown', [
    ('https://a.example/b?c=d&e', 'https://a.example/b?c=d&e'),
    ('https://a.example/b?X-Amz-Signature=1&a=2', 'https://a.example/b?X-Amz-Signature=REDACTED&a=2'),
    ('/?sig=a%3D&se=1', '/?sig=REDACTED&se=1'),
    ('/?%73ig=a', '/?%73ig=REDACTED'),
    ('/?design=a&signal=b', '/?design=a&signal=b'),
    ('/#access_token=a', '/#access_token=REDACTED'),
    ('/?a=1;api-key=b', '/?a=1;api-key=REDACTED'),
    ("/?password=it's&a=1", '/?password=REDACTED&a=1'),
    ('/?token=b;c?d&a=1', '/?token=REDACTED&a=1'),
    ('/?next=https://b.example/?token=c', '/?next=https://b.example/?token=REDACTED'),
    ('/?token=&a=1', '/?token=&a=1'),
    ("https://user:hunter's@a.example/", 'https://REDACTED@a.example/'),
    ('https://user:hunter2@a.example/@b', 'https://REDACTED@a.example/@b'),
    ('<https://a.example/?token=b>; rel=next', '<https://a.example/?token=REDACTED>; rel=next'),
])
def test_what_looks_like_a_secret_is_redacted(text, shown):
    url = one(started(target=text.encode())) if text.startswith('/') else None
    assert redacted(text) == shown
    assert redacted(text, True) == text
    if url is not None:
        assert timings(url)['url'].endswith(shown)
        assert har([url])['log']['entries'][0]['request']['url'].endswith(shown)


SECRETS = (
    started(target=b'/?signature=hunter2'), ConnectionTaken(1, 1, 1, 1, PLAIN),
    HeadReceived(2, 1, b'302', b'HTTP/1.1', (
        (b'set-cookie', b'a=hunter2; secure; path=/'), (b'location', b'/next?token=hunter2'),
        (b'x-api-key', b'hunter2'), (b'x-functions-key', b'hunter2'), (b'x-auth', b'hunter2')), 9),
    BodyEnded(3, 1, 0, None))


def secret_timeline():
    timeline = one(*SECRETS)
    timeline.headers = (
        (b'Authorization', b'Bearer hunter2'), (b'Cookie', b'a=hunter2; b=hunter2'))
    return timeline


@pytest.mark.parametrize('show', [
    lambda timeline, **options: json.dumps(timings(timeline, **options)),
    lambda timeline, **options: json.dumps(har([timeline], **options)),
    lambda timeline, **options: page_of([timeline], **options),
    lambda timeline, **options: shown([timeline], 300, headers=True, **options),
])
def test_secrets_are_shown_only_if_they_are_wanted(show):
    timeline = secret_timeline()
    assert 'hunter2' not in show(timeline)
    assert 'REDACTED' in show(timeline)
    assert 'hunter2' in show(timeline, with_secrets=True)
    assert 'REDACTED' not in show(timeline, with_secrets=True)


# ----------------------------------------------------------------------------------- JSON, HAR


def test_the_shape_of_the_json():
    timeline = one(*WHOLE)
    shape = timings(timeline)
    assert json.loads(json.dumps(shape)) == {**shape, 'headers': [['content-type', 'text/html']]}
    assert datetime.fromisoformat(shape.pop('started')).tzinfo is not None
    assert shape.pop('phases')[2:4] == [
        {'name': 'connect', 'start': 20, 'duration': 11},
        {'name': 'tls', 'start': 31, 'duration': 9}]
    assert shape == {
        'request': 1, 'method': 'GET', 'url': 'https://www.example.com/path?a=b',
        'duration': 100, 'ended': True, 'status': 200, 'http_version': 'HTTP/1.1',
        'lookups': [{'host': 'www.example.com', 'start': 10, 'duration': 10,
                     'addresses': ['192.0.2.1', '192.0.2.2'], 'error': None}],
        'attempts': [
            {'peer': '192.0.2.1:443', 'start': 20, 'duration': 10, 'outcome': 'failed',
             'connection': None, 'error': {
                 'type': 'ConnectionRefusedError', 'message': 'refused', 'phase': None}},
            {'peer': '192.0.2.3:443', 'start': 25, 'duration': 6, 'outcome': 'given up',
             'connection': None, 'error': None},
            {'peer': '192.0.2.2:443', 'start': 22, 'duration': 9, 'outcome': 'connected',
             'connection': 7, 'error': None}],
        'tls': {'version': 'TLSv1.3', 'cipher': 'TLS_AES_256_GCM_SHA384', 'resumed': False,
                'error': None},
        'connection': {'number': 7, 'request': 1, 'peer': '192.0.2.2:443',
                       'local': '192.0.2.9:50000', 'closed': 'keep_alive_timeout'},
        'sent': {'head': 120, 'body': 3000}, 'received': {'head': 300, 'body': 1234567},
        'request_headers': [], 'headers': [('content-type', 'text/html')], 'error': None}


def test_the_json_of_what_has_not_come_far():
    shape = timings(one(started()))
    assert [shape[name] for name in ('status', 'tls', 'connection', 'error')] == [None] * 4
    assert shape['ended'] is False
    shape = timings(one(started(), ConnectionTaken(1, 1, 7, 2, FACTS)))
    assert shape['tls'] == {'version': 'TLSv1.3', 'cipher': 'TLS_AES_256_GCM_SHA384',
                            'resumed': None, 'error': None}
    failed = TlsNegotiated(2, 1, 1, 7, None, None, False, OSError('bad'))
    shape = timings(one(started(), failed, RequestFailed(3, 1, OSError('bad'))))
    assert shape['tls'] == {
        'version': None, 'cipher': None, 'resumed': False,
        'error': {'type': 'OSError', 'message': 'bad', 'phase': None}}


def entry_of(timeline, **options):
    [entry] = har([timeline], **options)['log']['entries']
    return entry


def test_the_har_of_a_request():
    entry = entry_of(one(*WHOLE))
    assert datetime.fromisoformat(entry.pop('startedDateTime')).tzinfo is not None
    assert entry == {
        'time': 100_000,
        'request': {
            'method': 'GET', 'url': 'https://www.example.com/path?a=b',
            'httpVersion': 'HTTP/1.1', 'cookies': [], 'headers': [],
            'queryString': [{'name': 'a', 'value': 'b'}], 'headersSize': 120, 'bodySize': 3000},
        'response': {
            'status': 200, 'statusText': '', 'httpVersion': 'HTTP/1.1', 'cookies': [],
            'headers': [{'name': 'content-type', 'value': 'text/html'}],
            'content': {'size': 1234567, 'mimeType': 'text/html'}, 'redirectURL': '',
            'headersSize': 300, 'bodySize': 1234567},
        'cache': {},
        'timings': {'blocked': 12_000, 'dns': 10_000, 'connect': 20_000, 'ssl': 9_000,
                    'send': 8_000, 'wait': 20_000, 'receive': 30_000},
        'serverIPAddress': '192.0.2.2', 'connection': '7', '_resourceType': 'fetch'}


@pytest.mark.parametrize('events, absent', [
    ([ConnectionTaken(1, 1, 7, 2, FACTS)], {'dns', 'connect', 'ssl'}),
    ([ConnectionAttempted(1, 1, 0, '[::1]:80', 1, None)], {'dns', 'ssl'}),
    ([NameResolved(1, 1, 0, 'a', (), OSError())], {'connect', 'ssl'}),
])
def test_what_does_not_apply_is_minus_one(events, absent):
    entry = entry_of(one(started(), *events, RequestFailed(5, 1, OSError('no'))))
    assert {name for name, value in entry['timings'].items() if value == -1} == absent
    assert entry['time'] == 5_000
    assert entry['response']['status'] == 0
    assert entry['response']['_error'] == 'OSError: no'
    assert entry['response']['bodySize'] == entry['response']['headersSize'] == -1
    assert entry.get('serverIPAddress') == {
        ConnectionTaken: '192.0.2.2', ConnectionAttempted: '::1'}.get(type(events[0]))


def test_cookies_queries_and_locations_of_a_har():
    timeline = secret_timeline()
    entry = entry_of(timeline, with_secrets=True)
    assert entry['request']['cookies'] == [
        {'name': 'a', 'value': 'hunter2'}, {'name': 'b', 'value': 'hunter2'}]
    assert entry['response']['cookies'] == [{'name': 'a', 'value': 'hunter2'}]
    assert entry['response']['redirectURL'] == '/next?token=hunter2'
    entry = entry_of(timeline)
    assert entry['request']['cookies'][1] == {'name': 'b', 'value': 'REDACTED'}
    assert entry['response']['redirectURL'] == '/next?token=REDACTED'
    entry = entry_of(one(started(target=b'/?a=1%202+3&&b&a=#c')))
    assert entry['request']['queryString'] == [
        {'name': 'a', 'value': '1 2 3'}, {'name': 'b', 'value': ''}, {'name': 'a', 'value': ''}]


@pytest.mark.parametrize('data, size, fields, content', [
    (b'', 0, (), {'mimeType': 'x-unknown', 'size': 0}),
    (b'Zo\xc3\xab', 4, ((b'content-type', b'text/plain'),),
     {'mimeType': 'text/plain', 'size': 4, 'text': 'Zoë'}),
    (b'\xff\x00', 2, (), {
        'mimeType': 'x-unknown', 'size': 2, 'text': '/wA=', 'encoding': 'base64'}),
    (b'abc', 5, (), {
        'mimeType': 'x-unknown', 'size': 5, 'text': 'abc', 'comment': 'the first 3 bytes'}),
    (b'abc', 3, ((b'content-encoding', b'gzip'),), {
        'mimeType': 'x-unknown', 'size': 3,
        'comment': 'left out, because it is encoded by gzip'}),
])
def test_the_content_of_a_har(data, size, fields, content):
    timeline = one(started(), HeadReceived(1, 1, b'200', b'HTTP/1.1', fields, 9),
                   BodyEnded(2, 1, size, None))
    timeline.received += data
    timeline.sent += data
    timeline.headers = fields
    entry = entry_of(timeline)
    assert entry['response']['content'] == content
    if data:
        assert entry['request']['postData'] == {
            'mimeType': dict(fields).get(b'content-type', b'').decode(), 'params': [],
            'text': data.decode('utf-8', 'replace')}
    else:
        assert 'postData' not in entry['request']


# -------------------------------------------------------------------------------- the terminal


def shown(timelines, width=100, colours=None, encoding='utf-8', **options):
    """What a terminal of this width prints."""
    file = io.TextIOWrapper(io.BytesIO(), encoding)
    console = Console(file=file, width=width, color_system=colours, force_terminal=bool(colours),
                      no_color=not colours)
    console.print(Waterfall(timelines, **options), end='')
    file.flush()
    return file.buffer.getvalue().decode(encoding)


def test_a_request_as_a_terminal_shows_it():
    assert [line.rstrip() for line in shown([one(*WHOLE)], 80).splitlines()] == [
        'GET https://www.example.com/path?a=b',
        '  200 · HTTP/1.1 · 192.0.2.2:443 · TLSv1.3 TLS_AES_256_GCM_SHA384',
        '  connection 7, new · then closed: keep_alive_timeout',
        '  client              ━╸                   2.00 s',
        '  place   ━━━╸                             10.0 s',
        '  lookup     ━━━╸                          10.0 s  192.0.2.1, 192.0.2.2',
        '  connect       ━━━╸                       10.0 s  192.0.2.1:443 failed: refused',
        '  connect        ╺━━                       6.00 s  192.0.2.3:443 given up',
        '  connect       ╺━━━                       9.00 s  192.0.2.2:443',
        '  tls              ╺━━╸                    9.00 s  TLSv1.3, new session',
        '  send                 ━━╸                 8.00 s  120 B + 3.00 kB, 375 B/s',
        '  wait                   ╺━━━━━━           20.0 s',
        '  head                         ╺━━━        10.0 s  300 B',
        '  body                            ╺━━━━━━  20.0 s  1.23 MB, 61.7 kB/s',
        '  total   ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━   100 s', '']


def later(seconds, number, events=WHOLE):
    """The events of another request, that many seconds later."""
    for event in events:
        changes = {name: getattr(event, name) + seconds for name in ('time', 'started', 'opened')
                   if hasattr(event, name)}
        if hasattr(event, 'request'):
            changes['request'] = number
        yield event._replace(**changes)


def many(number=5):
    return recorded(*(event for turn in range(number) for event in later(10 * turn, turn + 1)))


def test_many_requests_have_a_line_each():
    assert [line.rstrip() for line in shown(many(3), 80, is_overview=True).splitlines()] == [
        '. client  p place  l lookup  c connect  t tls  s send  w wait  h head  b body',
        'GET /path?a=b    200 1.23 MB   100 s  pppllllcccttt.ssswwwwwwhhhhbbbbbbb',
        'GET /path?a=b    200 1.23 MB   100 s     pppplllcccctttssswwwwwwwhhhbbbbbbb',
        'GET /path?a=b    200 1.23 MB   100 s        pppplllccccttt.sswwwwwwwhhhbbbbbbb']


def test_lines_of_requests_to_several_hosts_have_their_hosts():
    timelines = recorded(*WHOLE, *later(
        0, 2, (started(origin='http://b.example:80'), *WHOLE[1:-2])))
    lines = shown(timelines, 110, is_overview=True).splitlines()
    assert lines[1].startswith('GET www.example.com/path?a=b ')
    assert lines[2].startswith('GET b.example/path?a=b ')
    lines = shown(timelines, 70, is_overview=True).splitlines()
    assert lines[1].startswith('GET ww…om/path?a=b ')


@pytest.mark.parametrize('width', [1, 5, 20, 27, 31, 40, 60, 79, 80, 120, 200])
@pytest.mark.parametrize('is_overview', [False, True])
def test_nothing_is_wider_than_the_terminal(width, is_overview):
    failed = later(20, 6, (*WHOLE[:6], RequestFailed(50, 1, HttpDataError('x' * 90 + ' y'))))
    timelines = (*many(3), *recorded(*failed))
    lines = shown(timelines, width, is_overview=is_overview, headers=True).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) >= len(timelines)


def test_a_long_note_leaves_room_for_the_bars():
    timeline = one(started(), ConnectionAttempted(1, 1, 0, 'a', None, OSError('x' * 90)),
                   RequestFailed(2, 1, OSError('no')))
    for width in 40, 80, 120:
        [line] = [line for line in shown([timeline], width).splitlines() if 'connect ' in line]
        assert re.fullmatch(r'  connect ━+╸? +1\.00 s  a failed.*…', line)
        assert len(line) == width
        assert line.count('━') >= 5


def test_a_terminal_without_unicode_gets_ascii():
    printed = shown([one(*WHOLE)], 80, encoding='ascii')
    assert '  place   ===-' in printed
    assert 'µ' not in shown([one(started(), RequestFailed(1e-6, 1, OSError('Zoë')))], 80,
                            encoding='ascii')
    assert shown(many(2), 80, encoding='ascii', is_overview=True).isascii()


def test_colours_are_for_terminals_that_have_them():
    assert '\x1b[36m' in shown([one(*WHOLE)], 80, 'standard')
    printed = shown(many(2), 80, 'standard', is_overview=True)
    assert '\x1b[36m━━━' in printed
    assert '\x1b' not in shown(many(2), 80, is_overview=True)


@pytest.mark.parametrize('is_overview', [False, True])
def test_a_server_can_not_write_to_the_terminal(is_overview):
    timeline = one(
        started(), ConnectionTaken(1, 1, 1, 1, FACTS),
        HeadReceived(2, 1, b'200', b'HTTP/1.1', ((b'a', b'\x1b[31m\x9b2J'),), 9),
        BodyEnded(3, 1, 0, HttpDataError('got \x1b[31m[red]')))
    timeline.response = timeline.response._replace(reason='\x1b[31m')
    printed = shown([timeline], 100, headers=True, is_overview=is_overview)
    assert not re.search('[\x00-\x09\x0b-\x1f\x7f-\x9f]', printed)
    if not is_overview:
        assert '< a: \ufffd[31m\ufffd2J' in printed
        assert 'HttpDataError: got \ufffd[31m[red]' in printed


@pytest.mark.parametrize('events, line', [
    ([], '  not answered yet'),
    ([RequestFailed(1, 1, OSError('no'))], '  failed'),
    ([NameResolved(1, 1, 0, 'a', (), OSError('no name'))], 'OSError: no name'),
    ([TlsNegotiated(1, 1, 0, 7, None, None, False, OSError('bad'))], 'OSError: bad'),
    ([TlsNegotiated(1, 1, 0, 7, 'TLSv1.2', 'A', True, None)], 'TLSv1.2, resumed'),
    ([ConnectionTaken(1, 1, 7, 2, PLAIN)], '  not answered yet · [2001:db8::1]:80 · '
                                           'connection 7, its request 2'),
    ([ConnectionTaken(1, 1, 7, 1, PLAIN._replace(peer=''))],
     '  not answered yet · connection 7, new'),
    ([RequestFailed(0, 1, OSError('no'))], '  failed: OSError: no'),
    ([RequestFailed(1, 1, OSError('no'))], '  failed in client: OSError: no'),
    ([RequestFailed(1, 1, UNSENT)], '  failed in send: HttpDataError: cut off'),
    ([HeadReceived(2, 1, b'200', b'HTTP/1.1', (), 9), BodyEnded(3, 1, 0, OSError('no'))],
     '  failed in body: OSError: no'),
])
def test_what_is_said_of_a_request(events, line):
    assert line in shown([one(started(), *events)]).replace('\n', '   ')


@pytest.mark.parametrize('seconds, text', [
    (0, '0 µs'), (1e-7, '0.10 µs'), (1.234e-6, '1.23 µs'), (12.34e-6, '12.3 µs'),
    (123.4e-6, '123 µs'), (999.4e-6, '999 µs'), (999.6e-6, '1.00 ms'), (9.996e-3, '10.0 ms'),
    (0.09996, '100 ms'), (0.9996, '1.00 s'), (999.4, '999 s'), (1000, '17 min'),
])
def test_times_have_three_digits(seconds, text):
    [line] = [line for line in shown([one(started(), RequestFailed(seconds, 1, OSError()))]
                                     ).splitlines() if 'total' in line]
    assert line.endswith(text)


@pytest.mark.parametrize('size, text', [
    (0, '0 B'), (999, '999 B'), (1_000, '1.00 kB'), (99_960, '100 kB'), (999_600, '1.00 MB'),
    (1_234_567_890, '1.23 GB'), (10 ** 12, '1.0 TB'),
])
def test_sizes_have_three_digits(size, text):
    timeline = one(started(), HeadReceived(0, 1, b'200', b'HTTP/1.1', (), 9),
                   BodyEnded(1e-4, 1, size, None))
    assert f'  {text}\n' in shown([timeline])


# ---------------------------------------------------------------------------------- the page


class Read(html.parser.HTMLParser):
    """The tags and the attributes of a page, and its text."""

    def __init__(self, page):
        super().__init__()
        self.tags = []
        self.attributes = []
        self.text = ''
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.text += data


def test_the_page_has_a_row_for_each_request():
    page = Read(page_of(many(3)))
    assert page.tags.count('details') == page.tags.count('summary') == 3
    assert [value for name, value in page.attributes if name == 'data-start'] == [
        '0.000000000', '10.000000000', '20.000000000']
    assert [value for name, value in page.attributes if name == 'data-duration'] == [
        '100.000000000'] * 3
    assert '3 requests, 3.70 MB received, 120 s in all, from ' in page.text
    styles = [value for name, value in page.attributes if name == 'style']
    assert len(styles) == 3 * 9
    assert styles[:2] == ['left:0.000%;width:8.333%', 'left:8.333%;width:8.333%']


def test_the_page_needs_nothing_else():
    page = Read(page_of(many(3)))
    assert not {name for name, _ in page.attributes} & {'src', 'href', 'onclick', 'onload'}
    assert not {'link', 'img', 'iframe'} & set(page.tags)
    [policy] = [value for name, value in page.attributes if name == 'content' and 'src' in value]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def test_the_page_shows_markup_as_it_is():
    timeline = one(
        started(target=b"/?<script>alert(1)</script>'${rows}"),
        HeadReceived(2, 1, b'404', b'HTTP/1.1', ((b'a<b>', b'</pre><script>\x1b'),), 9),
        BodyEnded(3, 1, 0, HttpDataError('<b>')))
    page = Read(page_of([timeline]))
    assert page.tags.count('script') == 1
    assert 'b' not in page.tags[page.tags.index('pre'):]
    assert "/?<script>alert(1)</script>'${rows}" in page.text
    assert '< a<b>: </pre><script>\ufffd' in page.text
    assert 'failed in body: HttpDataError: <b>' in page.text
    assert '1 request, 1 failed, ' in page.text


@pytest.mark.parametrize('events, state', [
    ((BodyEnded(3, 1, 0, None),), 'code good'), ((BodyEnded(3, 1, 0, OSError()),), 'code bad'),
])
def test_the_page_of_a_response(events, state):
    head_of = HeadReceived(2, 1, b'204', b'HTTP/1.1', (), 9)
    page = Read(page_of([one(started(), head_of, *events)]))
    assert state in [value for _, value in page.attributes]
    poor = one(started(), head_of._replace(code=b'404'))
    assert 'code poor' in [value for _, value in Read(page_of([poor])).attributes]


@pytest.mark.parametrize('target, row', [
    (b'http://[/a?b', 'GET /a?b ['), (b'http://[c]', 'GET  [c]'), (b'http://d?e#f', 'GET ?e d'),
])
def test_the_page_shows_a_target_that_is_no_url(target, row):
    assert row in Read(page_of([one(started(target=target))])).text


def test_the_page_of_nothing():
    assert '0 requests, 0 B received' in page_of([])
    assert shown([]) == ''
    assert len(shown([], is_overview=True).splitlines()) <= 1


# ------------------------------------------------------------------------------- the command


async def ran(*arguments):
    """Run the command in a thread, since it has a loop of its own, and return its exit status."""
    return await asyncio.to_thread(main, [*map(str, arguments)])


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    monkeypatch.setenv('COLUMNS', '100')
    monkeypatch.delenv('NO_COLOR', raising=False)


@pytest.fixture
def ca(tmp_path):
    path = tmp_path / 'ca.pem'
    authority().cert_pem.write_to_path(path)
    return path


@on_one_loop
async def test_the_command_shows_a_request(capsys):
    async with Server(Answering(OK)) as server:
        assert await ran(server.url) == 0
    printed = capsys.readouterr().out
    words = [line.split()[0] for line in printed.splitlines() if line]
    assert words[:2] == ['GET', '200']
    assert set(words) <= {'GET', '200', *PHASES, 'total'}
    assert {'connect', 'send', 'wait', 'total'} <= set(words)
    assert 'then closed' not in printed


@on_one_loop
async def test_the_command_sends_what_it_is_told_to(tmp_path, monkeypatch):
    (tmp_path / 'data').write_bytes(b'from\na file')
    monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(b'input')))
    script = Answering(OK)
    async with Server(script) as server:
        assert await ran(server.url) == 0
        assert await ran('-X', 'PUT', server.url, '-H', 'Accept:', '-H', 'a: Zoë',
                         '-d', 'a=b', '-d', f'@{tmp_path / "data"}', '-d', '-') == 0
        assert await ran(server.url, '-d', '', '--http1.0', '-H', 'content-type: a/b') == 0
    host = b'host: 127.0.0.1:%d\r\n' % server.port
    agent = b'user-agent: lowhaio-waterfall/0.1.0\r\n'
    assert script.heads == [
        b'GET / HTTP/1.1\r\n' + host + agent + b'accept: */*\r\n\r\n',
        b'PUT / HTTP/1.1\r\n' + host + agent
        + b'content-type: application/x-www-form-urlencoded\r\ncontent-length: 21\r\n'
        + b'a: Zo\xeb\r\n\r\n',
        b'POST / HTTP/1.0\r\n' + host + agent
        + b'accept: */*\r\ncontent-length: 0\r\ncontent-type: a/b\r\n\r\n']
    assert script.bodies[1] == b'a=b&from\na file&input'


@on_one_loop
async def test_the_command_follows_redirects_and_makes_requests_again(capsys):
    script = Answering(response(302, b'', b'location: /next'), response(503), OK)
    async with Server(script) as server:
        assert await ran('-L', '--retry', '9', '-i', server.url) == 0
    assert script.lines == ['GET /', 'GET /next', 'GET /next']
    printed = capsys.readouterr().out
    assert re.findall('^  (302|503|200) ', printed, re.MULTILINE) == ['302', '503', '200']
    assert '  < location: /next' in printed
    assert '  > accept: */*' in printed


@on_one_loop
async def test_one_redirect_too_many_is_a_failure(capsys):
    async with Server(Answering(response(302, b'', b'location: ftp://a.example/'))) as server:
        assert await ran('-L', server.url) == 1
    assert 'ftp' in capsys.readouterr().out


@on_one_loop
async def test_many_requests_of_the_command_have_a_table(capsys):
    async with Server(Answering(OK)) as server:
        assert await ran('--repeat', 10, '--parallel', 20, '--max-connections', 2,
                         server.url) == 0
    assert len(server.peers) == 2
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith('GET / ') for line in lines) == 10
    [title] = [number for number, line in enumerate(lines) if line.startswith('phase')]
    assert lines[title].split() == ['phase', 'requests', 'min', 'median', 'p95', 'max']
    table = {line.split()[0]: line.split()[1] for line in lines[title + 1:]}
    assert table['connect'] == '2'
    assert table['total'] == '10'


def test_figures_of_requests():
    rows = {each.name: each[1:] for each in figures(many(40))}
    assert rows['total'] == (40, 100, 100, 100, 100)
    timelines = [one(started(), RequestFailed(seconds, 1, OSError()))
                 for seconds in range(100, 0, -1)]
    [client, total] = figures(timelines)
    assert client == ('client', *total[1:])
    assert total == ('total', 100, 1, 50.5, 95, 100)


@on_one_loop
async def test_the_json_of_the_command_is_an_object_a_line(capsys):
    async with Server(Answering(OK)) as server:
        assert await ran('--json', '--repeat', 2, server.url) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first['call'], second['call']) == (1, 2)
    assert first['status'] == 200
    assert second['connection']['request'] == 2


@on_one_loop
async def test_files_of_the_command(tmp_path, capsysbinary):
    path = tmp_path / 'content'
    async with Server(Answering(response(200, b'secret=hunter2'))) as server:
        url = f'{server.url}?token=hunter2'
        assert await ran(url, '-o', path, '--har', tmp_path / 'har', '--har-content',
                         '--html', tmp_path / 'html', '-d', 'a') == 0
        assert b'hunter2' not in capsysbinary.readouterr().out
        assert await ran(url, '--output', '-', '--with-secrets', '--plain') == 0
    captured = capsysbinary.readouterr()
    assert path.read_bytes() == captured.out == b'secret=hunter2'
    assert b'?token=hunter2' in captured.err
    [entry] = json.loads((tmp_path / 'har').read_text())['log']['entries']
    assert entry['request']['url'].endswith('?token=REDACTED')
    assert entry['request']['postData']['text'] == 'a'
    assert entry['response']['content']['text'] == 'secret=hunter2'
    assert (tmp_path / 'html').read_text().startswith('<!DOCTYPE html>')


@on_one_loop
async def test_a_har_can_go_to_stdout(capsys):
    async with Server(Answering(OK)) as server:
        assert await ran(server.url, '--har', '-') == 0
    captured = capsys.readouterr()
    [entry] = json.loads(captured.out)['log']['entries']
    assert 'text' not in entry['response']['content']
    assert 'total' in captured.err


@on_one_loop
async def test_tls_of_the_command(ca, capsys):
    async with Server(Answering(OK), server_context()) as server:
        url = f'https://NAME.test:{server.port}/'
        resolve = f'Name.TEST:{server.port}:[::9],127.0.0.1'
        assert await ran(url, '--resolve', resolve, '--cacert', ca) == 0
        assert await ran(server.url, '--insecure') == 0
        assert await ran(server.url) == 1
    printed = capsys.readouterr().out
    assert len(re.findall('TLSv1.3, new session', printed)) == 2
    assert 'failed in tls: HttpTlsError: ' in printed
    assert 'CERTIFICATE_VERIFY_FAILED' in printed.replace('\n  ', '')


@on_one_loop
async def test_addresses_of_other_families_and_hosts(capsys):
    async with Server(Answering(OK)) as server:
        assert await ran(f'http://a.example:{server.port}/', f'http://localhost:{server.port}/',
                         '--resolve', 'a.example:*:::1') == 1
    printed = capsys.readouterr().out
    assert f'[::1]:{server.port}' in printed
    assert f'http://localhost:{server.port}/\n  200 ' in printed


@on_one_loop
async def test_addresses_are_those_of_a_host_in_any_of_its_forms(capsys):
    async with Server(Answering(OK)) as server:
        for given, asked in (('m\u00fcnchen.test', 'M\u00fcnchen.Test'),
                             ('name.test.', 'NAME.test')):
            assert await ran(f'http://{asked}:{server.port}/', '--resolve',
                             f'{given}:{server.port}:127.0.0.1') == 0


@on_one_loop
async def test_what_takes_too_long_is_cut_off(capsys):
    async with Server(holding()) as server:
        assert await ran('-m', '0.05', '--connect-timeout', 9, server.url) == 1
    printed = capsys.readouterr().out
    assert 'CancelledError' in printed
    assert '--max-time, 0.05 seconds, passed' in printed


@on_one_loop
async def test_a_request_that_fails_is_shown_as_far_as_it_came(capsys):
    async with Server(Answering(None)) as server:
        assert await ran(server.url) == 1
    printed = capsys.readouterr().out
    assert '  failed in head: HttpConnectionClosedError: GET ' in printed
    assert '  wait ' in printed
    assert '  body ' not in printed


@on_one_loop
async def test_a_request_that_is_refused_is_bad_usage(capsys):
    assert await ran('ftp://a.example/') == 2
    captured = capsys.readouterr()
    assert captured.out == ''
    assert captured.err.startswith('lowhaio-waterfall: ')


@pytest.mark.parametrize('arguments, message', [
    ([], 'URL'),
    (['u', '--repeat', '0'], "must be a number, 1 or more, got '0'"),
    (['u', '--parallel', 'x'], "must be a number, 1 or more, got 'x'"),
    (['u', '--retry', '-1'], "must be a number, 0 or more, got '-1'"),
    (['u', '-m', '0'], "must be seconds, more than 0, got '0'"),
    (['u', '-m', 'nan'], "must be seconds, more than 0, got 'nan'"),
    (['u', '--connect-timeout', 'x'], "must be seconds, more than 0, got 'x'"),
    (['u', 'v', '--repeat', '5001'], 'one run makes up to 10000 requests, not 10002'),
    (['u', 'v', '-o', 'x'], '--output is for a single request'),
    (['u', '--json', '--har', '-'],
     'only one of --output, --json, --har and --html can go to stdout'),
    (['u', '--har-content'], '--har-content needs --har'),
    (['u', '-H', 'a'], "--header must be 'name: value', got 'a'"),
    (['u', '-H', ': b'], "--header must be 'name: value', got ''"),
    (['u', '-H', 'a: \u20ac'], "codec can't encode"),
    (['u', '-d', '@/nowhere'], 'No such file or directory'),
    (['u', '--cacert', '/nowhere'], 'No such file or directory'),
    (['u', '--resolve', 'a:b'], "--resolve must be HOST:PORT:ADDRESS, got 'a:b'"),
    (['u', '--resolve', 'a:1:b'], "--resolve must be HOST:PORT:ADDRESS, got 'a:1:b'"),
    (['u', '--resolve', 'a b:1:::1'], "--resolve must be HOST:PORT:ADDRESS, got 'a b:1:::1'"),
])
def test_bad_usage(arguments, message, capsys):
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


@on_one_loop
async def test_a_file_that_can_not_be_written_is_an_error(tmp_path, capsys):
    async with Server(Answering(OK)) as server:
        assert await ran(server.url, '-o', tmp_path) == 3
        assert await ran(server.url, '--har', tmp_path / 'a' / 'b') == 3
        assert await ran(server.url, '-o', '/dev/full') == 3
    errors = capsys.readouterr().err.splitlines()
    assert errors == [
        f'lowhaio-waterfall: {tmp_path}: Is a directory',
        f'lowhaio-waterfall: {tmp_path}/a/b: No such file or directory',
        'lowhaio-waterfall: /dev/full: No space left on device']


@pytest.mark.parametrize('options', [(), ('--json',)])
@on_one_loop
async def test_an_output_that_can_not_be_written_is_an_error(options, capsys):
    async with Server(Answering(OK)) as server:
        with open('/dev/full', 'w') as full, contextlib.redirect_stdout(full):
            assert await ran(server.url, *options) == 3
    assert capsys.readouterr().err == 'lowhaio-waterfall: -: No space left on device\n'


@pytest.fixture
def interruptible():
    """As in a terminal. A shell has the processes ignore the signal that it starts behind it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupted_command_shows_what_it_has(capsys, interruptible):
    def interrupting(sock):
        receive_head(sock)
        os.kill(os.getpid(), signal.SIGINT)
        receive_end(sock)

    with ThreadServer(interrupting) as server:
        assert main([server.url]) == 130
    assert 'CancelledError' in capsys.readouterr().out


def test_the_module_ends_with_the_status_of_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['lowhaio-waterfall', 'ftp://a.example/'])
    with pytest.raises(SystemExit) as raised:
        runpy.run_module('lowhaio_waterfall', run_name='__main__')
    assert raised.value.code == 2
    assert 'ftp' in capsys.readouterr().err


def test_the_command_runs_as_a_module():
    root = pathlib.Path(__file__).parent
    run = subprocess.run(
        [sys.executable, '-W', 'error', '-m', 'lowhaio_waterfall', 'ftp://a.example/'],
        env={**os.environ, 'PYTHONPATH': f'{root}:{root.parent.parent}'}, text=True,
        capture_output=True, check=False)
    assert (run.returncode, run.stdout) == (2, '')
    assert run.stderr.startswith('lowhaio-waterfall: ')
    assert 'ftp' in run.stderr


# -------------------------------------------------------------------------------- the README

README = pathlib.Path(__file__).with_name('README.md')


def example():
    """The requests of the README's picture, in milliseconds."""
    origin, connection = 'https://www.example.com:443', 1
    facts = FACTS._replace(peer=('192.0.2.7', 443))
    first = (
        started(0, 1, b'/old', origin),
        NameResolved(9.23, 1, 0, 'www.example.com', ('192.0.2.7',), None),
        ConnectionAttempted(12.7, 1, 9.23, '192.0.2.7:443', connection, None),
        TlsNegotiated(35.8, 1, 12.7, connection, 'TLSv1.3', facts.cipher[0], False, None),
        ConnectionTaken(35.8, 1, connection, 1, facts), HeadSent(36, 1, 99),
        ResponseStarted(40.5, 1),
        HeadReceived(40.7, 1, b'302', b'HTTP/1.1', (), 82), BodyEnded(40.7, 1, 0, None))
    second = (
        started(41, 2, b'/new?signature=1', origin), ConnectionTaken(41, 2, connection, 2, facts),
        HeadSent(41.2, 2, 119), ResponseStarted(83.5, 2),
        HeadReceived(94.5, 2, b'200', b'HTTP/1.1', (), 87),
        BodyEnded(227, 2, 3_000_000, None))
    for event in first + second:
        times = {name: getattr(event, name) / 1000 for name in ('time', 'started')
                 if hasattr(event, name)}
        yield event._replace(**times)


def test_the_readme_shows_what_is_printed():
    timelines = recorded(*example())
    for timeline, reason in zip(timelines, ('Found', 'OK'), strict=True):
        timeline.response = timeline.response._replace(reason=reason)
    [picture] = re.findall('(?ms)^```text\n(.*?)^```$', README.read_text())
    printed = '\n'.join(line.rstrip() for line in shown(timelines, 95).splitlines())
    assert picture == printed.rstrip('\n') + '\n'


PRINTED = [
    r"GET https://www.example.com/ 200\n(\w+ True\n)+",
    r"b'200' b'Hello'\nGET https://www.example.com/\n  200 Reason .*\n(.*\n)*  total .*\n\n+",
]


@pytest.mark.parametrize('block, printed', [*zip(python_blocks(README), PRINTED, strict=True)],
                         ids=['recorder', 'stacked'])
def test_a_block_of_the_readme_runs_as_it_stands(block, printed, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with internet(Answering(response(200, b'Hello'))):
        run_block(block)
    assert re.fullmatch(printed, capsys.readouterr().out)


def test_the_readme_has_all_options_and_phases():
    text = README.read_text()
    with pytest.raises(SystemExit), contextlib.redirect_stdout(io.StringIO()) as printed:
        main(['--help'])
    long = set(re.findall('--[a-z][a-z0-9.-]+', printed.getvalue())) - {'--help', '--version'}
    short = {'--request': '-X', '--header': '-H', '--data': '-d', '--location': '-L',
             '--max-time': '-m', '--insecure': '-k', '--include': '-i', '--output': '-o'}
    assert {option for option in long if f'`{short.get(option, option)}' not in text} == set()
    assert re.findall(r'^\| `(\w+)` \| [a-z]', text, re.MULTILINE)[:len(PHASES)] == [*PHASES]


def test_the_readme_has_the_shape_of_the_json():
    text = README.read_text()
    shape = text[text.index('### The JSON'):text.index('### Secrets')]
    names = set(re.findall(r'`(\w+)`', shape.partition('| --- | --- |')[2]))
    assert {'call', *timings(one(*WHOLE))} <= names
