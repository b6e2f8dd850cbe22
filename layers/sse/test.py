"""Tests of lowhaio_sse: what is read from event streams, and how connections are made again.

The tables have the cases of the eventsource tests of the Web Platform Tests, in other words.
"""

import asyncio
import contextlib
import gc
import inspect
import itertools
import pathlib
import re
import weakref
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowhaio_sse
from lowhaio import HttpConnectionClosedError, HttpConnectionError, HttpDataError, Pool, streamed
from lowhaio_compression import decompressed
from lowhaio_redirect import redirectable
from lowhaio_retry import is_lasting
from lowhaio_sse import (
    EventStreamError,
    EventTooLong,
    Parser,
    ServerSentEvent,
    events,
    events_of,
)
from tests.harness import (
    OK,
    Answering,
    Server,
    bound_to,
    chunked,
    connecting_to,
    cut_into_bytes,
    forever,
    head,
    holding,
    internet,
    measured,
    on_clock,
    on_loops,
    on_one_loop,
    passing,
    pool,
    python_blocks,
    response,
    row,
    run_block,
    turns,
    until,
    value,
)

EVENTS = b'content-type: text/event-stream'


def stream(content, *fields):
    """A whole response that is an event stream."""
    return response(200, content, EVENTS, *fields)


def message(data, event_id='', kind='message'):
    return ServerSentEvent(kind, data, event_id)


# ---------------------------------------------------------------------------------- the format

STREAMS = {
    # Bytes, or text as UTF-8, and the events that end in it.
    'nothing': ('', []),
    'one line': ('data: a\n\n', [message('a')]),
    'LF': ('data: a\ndata: b\n\n', [message('a\nb')]),
    'CR': ('data: a\rdata: b\r\rdata: c\r\r', [message('a\nb'), message('c')]),
    'CRLF': ('data: a\r\ndata: b\r\n\r\n', [message('a\nb')]),
    'CR, CRLF, LF': ('data: a\rdata: b\r\ndata: c\n\ndata: d\r\n\n',
                     [message('a\nb\nc'), message('d')]),
    'LF, CR': ('data: a\n\rdata: b\n\n', [message('a'), message('b')]),
    'CR, LF, LF': ('data: a\r\n\ndata: b\r\n\n', [message('a'), message('b')]),
    'CR, CR, LF': ('data: a\r\r\ndata: b\n\n', [message('a'), message('b')]),
    'line ends first': ('\n\r\r\n\ndata: a\n\n', [message('a')]),
    'no other line ends': ('data: a\x0b\x0c\x1c\x85\u2028b\n\n',
                           [message('a\x0b\x0c\x1c\x85\u2028b')]),
    'no space': ('data:a\n\n', [message('a')]),
    'two spaces': ('data:  a\n\n', [message(' a')]),
    'a tab': ('data:\ta\n\n', [message('\ta')]),
    'spaces at the end': ('data: a \n\n', [message('a ')]),
    'colons': ('data: a: b:\n\n', [message('a: b:')]),
    'no colon': ('data\n\n', [message('')]),
    'empty data': ('data:\n\ndata: \n\n', [message(''), message('')]),
    'empty lines of data': ('data\ndata\n\ndata:a\ndata\ndata:b\n\n',
                            [message('\n'), message('a\n\nb')]),
    'NUL in data': ('data: a\0b\n\n', [message('a\0b')]),
    'NUL in a name': ('data\0: a\ndata: b\n\n', [message('b')]),
    'unknown fields': ('Data: a\n data: b\ndat: c\ndata : d\ndatas: e\ndata: f\n\n',
                       [message('f')]),
    'comments': (': a\n:\ndata: b\n: data: c\n:data: d\ndata: e\n\n: f\n\n', [message('b\ne')]),
    'a type': ('event: add\ndata: a\n\ndata: b\n\n', [message('a', kind='add'), message('b')]),
    'an empty type': ('event: add\nevent:\ndata: a\n\nevent\ndata: b\n\n',
                      [message('a'), message('b')]),
    'the last type': ('data: a\nevent: add\nevent: message \n\n', [message('a', kind='message ')]),
    'a type without data': ('event: add\n\ndata: a\n\n', [message('a')]),
    'IDs': ('id: 1\ndata: a\n\ndata: b\n\nid: 2\nid:3\ndata: c\n\n',
            [message('a', '1'), message('b', '1'), message('c', '3')]),
    'an ID after data': ('data: a\nid: 1\n\n', [message('a', '1')]),
    'an empty ID': ('id: 1\ndata: a\n\nid\ndata: b\n\nid: 2\n\nid:\ndata: c\n\n',
                    [message('a', '1'), message('b'), message('c')]),
    'NUL in an ID': ('id: 1\ndata: a\n\nid: 2\0\ndata: b\n\nid:\0\ndata: c\n\n',
                     [message('a', '1'), message('b', '1'), message('c', '1')]),
    'an ID without data': ('id: 1\n\ndata: a\n\n', [message('a', '1')]),
    'characters of an ID': ('id: \xe9\u2026 7\ndata: a\n\n', [message('a', '\xe9\u2026 7')]),
    'BOM': ('\ufeffdata: a\n\n', [message('a')]),
    'BOM twice': ('\ufeff\ufeffdata: a\ndata: b\n\n', [message('b')]),
    'BOM later': ('data: a\n\n\ufeffdata: b\n\n', [message('a')]),
    'BOM after a line end': ('\r\n\ufeffdata: a\n\n', []),
    'BOM in data': ('data: \ufeffa\n\n', [message('\ufeffa')]),
    'BOM alone': ('\ufeff', []),
    'a part of a BOM': (b'\xef\xbbdata: a\ndata: b\n\n', [message('b')]),
    'characters': ('data: \xe9\u20ac\U0001f600\n\n', [message('\xe9\u20ac\U0001f600')]),
    'no UTF-8': (b'data: \xff\xc3\xf0\x9f\x98\n\nevent: \xe9\ndata: \xed\xa0\x80\n\n',
                 [message('\ufffd\ufffd\ufffd'), message('\ufffd\ufffd\ufffd', kind='\ufffd')]),
    'retry': ('retry: 1\ndata: a\nretry: 2\n\n', [message('a')]),
    'nothing but other fields': ('\n: a\n\nretry: 1\n\nid: 1\nevent: a\n\n', []),
    'no end': ('data: a\n\ndata: b\n', [message('a')]),
}


def in_bytes(content):
    return content if isinstance(content, bytes) else content.encode()


def parsed(*chunks, **options):
    """The events, the last ID and the `retry`."""
    parser = Parser(**options)
    found = [event for chunk in chunks for event in parser.feed(chunk)]
    return found, parser.last_event_id, parser.retry


def reference(content, last_event_id=''):
    """As `parsed`, but in the way of a person who has all of it on paper."""
    text = content.decode('utf-8', 'replace').removeprefix('\ufeff')
    lines = re.split('\r\n|\r|\n', text)[:-1]
    fields = [re.fullmatch('([^:]*):? ?(.*)', line, re.DOTALL).groups() if ':' in line
              else (line, '') for line in lines]
    retries = [int(value) / 1000 for name, value in fields
               if name == 'retry' and re.fullmatch('[0-9]+', value)]
    ends = [number for number, line in enumerate(lines) if not line]
    found = []
    for first, end in itertools.pairwise([-1, *ends]):
        block = fields[first + 1:end]
        values = {name: [text for key, text in block if key == name]
                  for name in ('data', 'event', 'id')}
        ids = [text for text in values['id'] if '\0' not in text]
        last_event_id = ids[-1] if ids else last_event_id
        if values['data']:
            found.append(message('\n'.join(values['data']), last_event_id,
                                 (values['event'] or [''])[-1] or 'message'))
    return found, last_event_id, retries[-1] if retries else None


@pytest.mark.parametrize('case', STREAMS)
def test_a_stream_is_read_as_browsers_do(case):
    content, expected = STREAMS[case]
    content = in_bytes(content)
    assert parsed(content)[0] == expected
    whole = parsed(content)
    assert whole == reference(content)
    assert parsed(*cut_into_bytes(content)) == whole
    for at in range(len(content) + 1):
        assert parsed(content[:at], b'', content[at:]) == whole
        # What is cut short has the events that have ended.
        assert parsed(content[:at]) == reference(content[:at])


TOKENS = st.sampled_from([
    b'data', b'event', b'id', b'retry', b':', b': ', b' ', b'\n', b'\r', b'\r\n', b'\n\n', b'7',
    b'\0', b'a', b'data: a\n', b'id: 1\n', b'event: b\r\n', b'retry: 5\r', b'\xef\xbb\xbf',
    b'\xef', b'\xbb\xbf', b'\xe2\x82\xac', b'\xf0\x9f', b'\xff'])


@settings(max_examples=40, deadline=None, database=None)
@given(st.lists(TOKENS, max_size=40), st.lists(st.integers(0, 80)))
def test_any_stream_in_any_pieces_is_read_as_on_paper(tokens, cuts):
    content = b''.join(tokens)
    ends = sorted({0, len(content), *(at for at in cuts if at < len(content))})
    pieces = [content[start:end] for start, end in itertools.pairwise(ends)]
    assert parsed(*pieces, last_event_id='0') == reference(content, '0')


@pytest.mark.parametrize('ending', ['\n\n', '\r\r', '\r\n\r', '\n\r', '\r\n\n'])
def test_an_event_is_not_kept_waiting_for_what_follows(ending):
    assert parsed(b'data: a' + ending.encode())[0] == [message('a')]


def test_the_seconds_that_a_server_tells():
    def retry(text):
        return parsed(b'retry: 7\nretry' + text.encode() + b'\n')[2]

    assert retry(': 1500') == retry(':1500') == retry(': 001500') == 1.5
    assert retry(': 0') == 0
    assert retry(': ' + '9' * 10_000) == float('inf')
    for text in ('', ':', ': 1.5', ': -1', ': +1', ': 1 ', ':  1', ': \u0663', ': 1_0', ': 1e3',
                 ': 1000x'):
        assert retry(text) == 0.007
    # It counts at once, even if its block never ends, and an ID does not.
    assert parsed(b'retry: 1000\nid: 5\n') == ([], '', 1)


def test_what_is_known_while_events_are_taken():
    parser = Parser(last_event_id='0')
    assert repr(parser) == '<Parser 0 bytes held has_begun=False retry=None>'
    taken = parser.feed(b'data: a\n\nid: 1\ndata: b\n\nid: 2\n\ndata: c')
    assert (next(taken).data, parser.last_event_id) == ('a', '0')
    assert (next(taken).data, parser.last_event_id) == ('b', '1')
    assert (list(taken), parser.last_event_id) == ([], '2')
    assert repr(parser) == '<Parser 7 bytes held has_begun=True retry=None>'


def test_a_long_line_in_small_pieces():
    # Were each piece to copy the line, this would copy gigabytes.
    assert parsed(b'data: ', *[b'a'] * 20_000, *[b'b' * 10_000] * 500, b'\n\n')[0] == [
        message('a' * 20_000 + 'b' * 5_000_000)]


@pytest.mark.parametrize('endless', [b'data: ab\n', b'data\n', b'data: ' + b'a' * 100,
                                     b':' + b'a' * 100, b'id: ' + b'a' * 100])
def test_an_event_that_does_not_end_is_not_held_for_ever(endless):
    parser = Parser(max_event_length=1000)
    with pytest.raises(
            EventTooLong, match='^an event is longer than max_event_length, 1000 bytes$') as info:
        for _ in range(1000 // (len(endless) - 1) + 1):
            assert list(parser.feed(endless)) == []
    assert is_lasting(info.value)
    assert (info.value.phase, info.value.response_started) == ('content', True)


@pytest.mark.parametrize('endless', [
    b': ping\n', b'\n', b'data: ab\n\n', b'event: a\nretry: 1\nid: 1\n'])
def test_a_stream_need_not_end(endless):
    parser = Parser(max_event_length=20)
    for content in (endless, endless * 10):
        for _ in range(100):
            list(parser.feed(content))


def test_an_event_may_be_as_long_as_that():
    content = b'data: a\ndata: bc\nid: 1\n\n' * 3
    for cut in ([content], cut_into_bytes(content)):
        assert len(parsed(*cut, max_event_length=20)[0]) == 3
        parser = Parser(max_event_length=19)
        with pytest.raises(EventTooLong):
            for chunk in cut:
                assert list(parser.feed(chunk)) == []


# ----------------------------------------------------------------------------- of one response

@contextlib.asynccontextmanager
async def answered(*responses, layer=lambda request: request, **options):
    """A function that makes `events` of a server, and the script that answers them."""
    script = responses[0] if callable(responses[0]) else Answering(*responses)
    options = {'jitter': 0, **options}
    async with Server(script) as server, pool() as request:
        def make(**more):
            return events(layer(request), server.url, **{**options, **more})

        yield make, script


async def all_of(iterator):
    """What came, and the error or None."""
    came = []
    try:
        async for event in iterator:
            came.append(event)
    except HttpDataError as error:
        return came, error
    return came, None


@contextlib.asynccontextmanager
async def body_of(*pieces):
    async with Server(holding(*pieces)) as server, pool() as request:
        _, _, body = await request(b'POST', server.url)
        yield body


@on_loops
async def test_the_events_of_one_response():
    async with body_of(stream(b'id: 1\ndata: a\n\nretry: 5\ndata: b\n\ndata: no end')) as body:
        found = events_of(body, last_event_id='0')
        assert re.fullmatch(r'<BodyEvents <Parser .*> of <.*>>', repr(found))
        assert (found.last_event_id, found.retry) == ('0', None)
        assert await all_of(found) == ([message('a', '1'), message('b', '1')], None)
        assert (found.last_event_id, found.retry) == ('1', 0.005)


@on_loops
async def test_the_events_of_one_response_that_is_cut_off():
    async def script(peer):
        await peer.read_head()
        await peer.send(chunked(b'9\r\ndata: a\n\n\r\n9\r\ndata: b\n'))

    async with Server(script) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        came, error = await all_of(events_of(body))
    assert came == [message('a')]
    assert type(error) is HttpConnectionClosedError
    assert (error.phase, error.response_started) == ('content', True)


@on_loops
async def test_the_events_of_one_response_that_are_not_wanted_any_more():
    async with body_of(head(EVENTS) + b'data: a\n\ndata: b\n\n') as body:
        found = events_of(body)
        assert await anext(found) == message('a')
        await found.aclose()
        came, error = await all_of(found)
        assert came == []
        assert 'the response body was closed before its end' in str(error)


@on_loops
async def test_an_event_that_is_too_long_closes_the_body():
    async with body_of(head(EVENTS) + b'data: a\n\ndata: ' + b'b' * 100) as body:
        came, error = await all_of(events_of(body, max_event_length=50))
        assert (came, type(error)) == ([message('a')], EventTooLong)
        _, error = await all_of(body)
        assert 'the response body was closed before its end' in str(error)


@on_one_loop
async def test_the_events_of_any_chunks():
    async def chunks():
        yield b'data: a\n'
        yield b'\n'

    class Chunks:
        def __init__(self):
            self.chunks = chunks()

        def __aiter__(self):
            return self

        def __anext__(self):
            return anext(self.chunks)

    assert await all_of(events_of(chunks())) == ([message('a')], None)
    found = events_of(Chunks())
    await found.aclose()
    for wrong in (0, 1.5, None):
        with pytest.raises(ValueError, match='^max_event_length must be a number of bytes, 1 or'):
            events_of(chunks(), max_event_length=wrong)


# ----------------------------------------------------------------------------------- for ever

@on_loops
async def test_a_stream_that_ends_goes_on_after_the_last_event():
    async with answered(
            stream(b'retry: 0\ndata: a\n\n'),  # no ID yet
            stream(b'id: 1\ndata: b\n\nid: 2\n\n'),  # an ID alone counts
            stream(b'id: 3\ndata: c\n\nid: 4\ndata: no end'),  # one without end does not
            stream(b'data: d\n\n', b'content-encoding: Identity'),  # nor is the last one forgotten
            stream(b'id: \xc3\xa9\ndata: e\n\n'),
            stream(b'id: 5\x01\ndata: f\n\n'),  # no field can hold it
            stream(b'id\ndata: g\n\n'),
            response(204)) as (make, script):
        found = make()
        assert await all_of(found) == ([
            message('a'), message('b', '1'), message('c', '3'), message('d', '3'),
            message('e', '\xe9'), message('f', '5\x01'), message('g')], None)
        assert await all_of(found) == ([], None)
    assert [value(asked, b'last-event-id') for asked in script.heads] == [
        None, None, b'2', b'3', b'3', b'\xc3\xa9', None, None]
    assert set(script.connections) == {0}


@on_loops
async def test_what_is_asked_for():
    async with answered(stream(b'retry: 0\nid: 1\n\n'), response(204)) as (make, script):
        assert await all_of(make(
            headers=iter([(b'Accept', b'*/*'), (b'x', b'1')]), params=iter([('a', '1')]),
            last_event_id='0')) == ([], None)
    for asked, last in zip(script.heads, (b'0', b'1'), strict=True):
        lines = asked.split(b'\r\n')
        assert lines[0] == b'GET /?a=1 HTTP/1.1'
        assert lines[2:] == [b'Accept: */*', b'x: 1', b'cache-control: no-cache',
                             b'last-event-id: ' + last, b'', b'']
    async with answered(response(204)) as (make, script):
        await all_of(make())
    assert value(script.heads[0], b'accept') == b'text/event-stream'


@on_clock
async def test_a_stream_survives_lost_connections():
    async def script(peer):
        script.heads.append(await peer.read_head())
        number = len(script.heads)
        if number == 7:
            await peer.send(response(204))
        elif number % 3 == 0:
            await peer.send(head(EVENTS, b'content-length: 100') + b'id: %d\ndata: a\n\n' % number)
        # And then, or else, it hangs up.

    def told(attempt, seconds, outcome):
        tellings.append((attempt, seconds, type(outcome), outcome.phase))

    script.heads, tellings = [], []
    async with answered(script, on_reconnect=told, max_failures=4) as (make, _):
        seconds, task = await measured(all_of(make()))
    assert [event.id for event in task.result()[0]] == ['3', '6']
    assert [value(asked, b'last-event-id') for asked in script.heads] == [
        None, None, None, b'3', b'3', b'3', b'6']
    assert tellings == [
        (attempt, pause, HttpConnectionClosedError, phase) for attempt, pause, phase in (
            (1, 3, 'head'), (2, 6, 'head'), (1, 3, 'content'), (2, 6, 'head'), (3, 12, 'head'),
            (1, 3, 'content'))]
    assert seconds == 33


@on_clock
async def test_a_server_that_can_not_be_reached_is_waited_for():
    def told(attempt, seconds, outcome):
        pauses.append(seconds)
        assert type(outcome) is HttpConnectionError

    pauses = []
    [sock] = bound_to('127.0.0.1')
    with sock:
        async with pool() as request:
            found = events(request, f'http://127.0.0.1:{sock.getsockname()[1]}/', jitter=0,
                           max_failures=12, max_pause=20, on_reconnect=told)
            _, task = await measured(found.__anext__())
    assert type(task.exception()) is HttpConnectionError
    assert pauses == [3, 6, 12, *[20] * 8]


async def measured_all(iterator):
    seconds, task = await measured(all_of(iterator))
    return seconds, *task.result()


PASSING = {
    # Responses, and the pauses after each.
    'codes': ([response(code) for code in (500, 501, 503, 599, 408, 425, 429)],
              [3, 6, 12, 24, 48, 60, 60]),
    'content that ends': ([stream(b': hello\n')] * 3, [3, 6, 12]),
    'an event resets': ([response(503), response(503), stream(b'data: a\n\n'), response(503)],
                        [3, 6, 3, 6]),
    'an ID does not': ([response(503), stream(b'id: 1\n\n')], [3, 6]),
    'retry': ([stream(b'retry: 10000\n\n'), response(503), stream(b'retry: 100000\n\n'),
               response(503), stream(b'retry: 99999999\ndata: a\n\n')],
              [10, 20, 100, 100, 3600]),
    'no pause': ([stream(b'retry: 0\ndata: a\n\n'), stream(b'data: a\n\n'), response(503),
                  response(503)], [0, 0, 2, 4]),
    'retry-after': ([response(503, b'', b'retry-after: 7'), response(429, b'', b'retry-after: 2'),
                     response(503, b'', b'retry-after: 90.5'),
                     response(503, b'', b'retry-after: 9999')], [7, 6, 90.5, 3600]),
    'retry-after as a date': ([response(503, b'', b'date: Sun, 06 Nov 1994 08:49:37 GMT',
                                        b'retry-after: ' + date) for date in (
        b'Sun, 06 Nov 1994 08:50:37 GMT', b'Sunday, 06-Nov-94 08:50:47 GMT',
        b'Sun Nov  6 08:50:57 1994', b'Sun, 06 Nov 1994 08:49:30 GMT')], [60, 70, 80, 24]),
    'a date without another': ([response(503, b'', b'retry-after: Sun, 06 Nov 1994 08:50:37 GMT'),
                                response(503, b'', b'retry-after: Fri, 06 Nov 2699 08:50:37 GMT')],
                               [3, 3600]),
    'no retry-after': ([response(503, b'', b'retry-after: ' + wrong) for wrong in (
        b'', b'-5', b'soon', b'Sun, 06 Nov 99999 08:50:37 GMT')], [3, 6, 12, 24]),
}


@pytest.mark.parametrize('case', PASSING)
@on_clock
async def test_what_passes_is_waited_for(case):
    responses, expected = PASSING[case]
    attempts, pauses, outcomes = zip(*await reconnections(responses), strict=True)
    assert list(pauses) == expected
    for outcome, answer in zip(outcomes, responses, strict=True):
        code, headers = outcome
        assert b'HTTP/1.1 %b ' % code in answer
        assert (b'content-length', value(answer, b'content-length')) in headers


async def reconnections(responses, **options):
    """What `on_reconnect` is told. So much time must have passed."""
    told = []
    async with answered(*responses, response(204), on_reconnect=lambda *args: told.append(args),
                        **options) as (make, script):
        seconds, _, error = await measured_all(make())
    assert error is None
    assert seconds == pytest.approx(sum(pause for _, pause, _ in told), abs=0.01)
    return told


@on_clock
async def test_many_clients_do_not_come_back_together():
    pauses = [pause for _, pause, _ in await reconnections(
        [response(503)] * 25, jitter=0.5, pause=4, max_pause=0)]
    assert len(set(pauses)) == 25
    assert 4 <= min(pauses) < 5
    assert 5 < max(pauses) <= 6


@on_clock
async def test_failures_in_a_row_are_enough():
    for answer, end in (
            (response(503, b'busy'), 'expected an event stream, got 503: b\'busy\''),
            (stream(b': hello\n\n'), 'the event stream has ended, which is failure 3 in a row')):
        async with answered(stream(b'data: a\n\n'), answer, max_failures=3) as (make, script):
            seconds, came, error = await measured_all(make())
        assert came == [message('a')]
        assert type(error) is EventStreamError
        assert re.fullmatch(f'GET http://127.0.0.1:[0-9]+, {re.escape(end)}', str(error))
        # The end of the first stream was the first failure.
        assert (seconds, len(script.heads)) == (9, 3)


@on_loops
async def test_after_the_first_request_no_error_says_that_nothing_was_sent():
    async def get_connection(scheme, host, port):
        if tried:
            raise OSError('no way')
        tried.append(port)
        return await connecting_to(http=server.port)(scheme, host, port)

    for answer, expected in ((stream(b'data: a\n\n', b'connection: close'), [message('a')]),
                             (None, [])):
        tried = []
        async with Server(Answering(answer)) as server:
            async with pool(get_connection=get_connection) as request:
                came, error = await all_of(events(request, server.url, pause=0, max_failures=2))
        assert came == expected
        assert type(error) is HttpDataError
        assert type(error.__cause__) is HttpConnectionError
        assert str(error) == f'connecting again: {error.__cause__}'
        assert (error.phase, error.reused, error.response_started) == ('connect', False, True)


@on_loops
async def test_where_time_does_not_help_it_ends():
    request, close = Pool()
    with pytest.raises(HttpConnectionError, match='url must'):
        await anext(events(request, 'ftp://name.test/'))
    await close()
    found = events(request, 'http://name.test/')
    with pytest.raises(HttpConnectionError, match='the pool is closed'):
        await anext(found)
    assert await all_of(found) == ([], None)


@on_clock
async def test_a_place_in_the_pool_may_be_free_later():
    async with Server(holding(head(EVENTS) + b'data: a\n\n')) as server:
        async with pool(max_connections=1, pool_timeout=5) as request:
            _, _, body = await request(b'GET', server.url)
            found = events(request, server.url, jitter=0)
            task = asyncio.ensure_future(found.__anext__())
            await passing(7)
            await body.aclose()
            await passing(1.5)
            await until(task.done)
            assert task.result() == message('a')
            await found.aclose()


NO_STREAM = {
    'not found': (response(404, b'no such thing\n', EVENTS), b'404', b'no such thing\n',
                  "got 404: b'no such thing\\n'"),
    'another code below 300': (response(206, b'data: a\n\n', EVENTS), b'206', b'data: a\n\n',
                               "got 206: b'data: a\\n\\n'"),
    'a redirect': (response(302, b'', b'location: /'), b'302', b'',
                   "got 302, which lowhaio-redirect around the request would follow: b''"),
    'no type': (response(200, b'data: a\n\n'), b'200', b'data: a\n\n',
                "got 200 with the content-type b'': b'data: a\\n\\n'"),
    'another type': (response(200, b'<p>' + b'a' * 100, b'content-type: Text/HTML; charset=a'),
                     b'200', b'<p>' + b'a' * 100,
                     f"got 200 with the content-type b'text/html': b'<p>{'a' * 57}'"),
    'compressed unasked': (
        response(200, b'\x1f\x8b', EVENTS, b'content-encoding: GZIP'), b'200', b'\x1f\x8b',
        "got 200 with the content-type b'text/event-stream', in the coding b'gzip', which "
        "lowhaio-compression around the request would decode: b'\\x1f\\x8b'"),
    'an answer without end': (head(b'content-type: text/plain') + b'a' * 70_000, b'200',
                              b'a' * 65536, 'got 200 with the content-type '
                              f"b'text/plain': {b'a' * 60!r}"),
}


@pytest.mark.parametrize('case', NO_STREAM)
@on_one_loop
async def test_what_is_no_stream_is_told_and_not_asked_for_again(case):
    answer, code, content, end = NO_STREAM[case]
    async with answered(answer) as (make, script):
        found = make()
        _, error = await all_of(found)
        assert await all_of(found) == ([], None)
    assert type(error) is EventStreamError
    assert re.fullmatch('GET http://127.0.0.1:[0-9]+, expected an event stream, '
                        + re.escape(end), str(error))
    assert (error.code, error.body) == (code, content)
    assert error.headers == tuple(
        tuple(line.split(b': ')) for line in answer.partition(b'\r\n\r\n')[0].split(b'\r\n')[1:])
    assert (error.phase, error.response_started) == ('head', True)
    assert is_lasting(error)
    assert len(script.heads) == 1


@on_clock
async def test_an_answer_that_comes_slowly_or_is_cut_off_is_told_nevertheless():
    answer = head(b'content-length: 9', start=b'HTTP/1.1 404 No') + b'abc'
    for script, expected in (holding(answer), 1), (Answering(answer, close_after=True), 0):
        async with answered(script) as (make, _):
            seconds, _, error = await measured_all(make())
            assert (seconds, error.code, error.body) == (expected, b'404', b'abc')


MEDIA_TYPES = {
    b'text/event-stream': True,
    b'text/event-stream;': True,
    b'text/event-stream; charset=windows-1251': True,
    b'text/event-stream ; charset=utf-8': True,
    b'TEXT/event-STREAM': True,
    b'': False,
    b'text/event-streams': False,
    b'text/event-stream-x': False,
    b'text/x-event-stream': False,
    b'x text/event-stream': False,
    b'text /event-stream': False,
    b'application/json; a=text/event-stream': False,
}


@on_one_loop
async def test_the_type_of_a_stream():
    for media_type, is_stream in MEDIA_TYPES.items():
        with row(media_type):
            async with answered(response(
                    200, 'data: \xe9\n\n'.encode(), b'content-type: ' + media_type),
                    response(204), pause=0) as (make, script):
                came, error = await all_of(make())
            assert came == ([message('\xe9')] if is_stream else [])
            assert (error is None) == is_stream
    async with answered(response(200, b'', EVENTS, b'content-type: text/html')) as (make, _):
        assert type((await all_of(make()))[1]) is EventStreamError


@on_loops
async def test_redirects_are_those_of_a_layer():
    def moved(peer_url):
        return response(307, b'', b'location: ' + peer_url.encode())

    other = Answering(stream(b'retry: 0\nid: 1\ndata: a\n\n'), response(204))
    async with Server(other) as there:
        async with answered(moved(there.url), layer=lambda request: redirectable(
                request, keep=(b'last-event-id',))) as (make, script):
            assert await all_of(make()) == ([message('a', '1')], None)
    # Each connection begins at the first URL.
    assert [value(asked, b'last-event-id') for asked in script.heads] == [None, b'1']
    assert [value(asked, b'last-event-id') for asked in other.heads] == [None, b'1']
    assert {value(asked, b'accept') for asked in other.heads} == {b'text/event-stream'}


# ------------------------------------------------------------------------------ other methods

POSTED = {'method': b'POST', 'body': streamed(b'a=1'), 'headers': ((b'content-length', b'3'),)}


@on_loops
async def test_a_request_that_is_not_idempotent_is_made_once():
    for answer, expected, kind in (
            (stream(b'data: a\n\ndata: b'), [message('a')], type(None)),
            (head(EVENTS, b'content-length: 90') + b'data: a\n\n', [message('a')],
             HttpConnectionClosedError),
            (response(429, b'{"error": 1}'), [], EventStreamError),
            (None, [], HttpConnectionClosedError)):
        async with answered(Answering(answer, close_after=True)) as (make, script):
            came, error = await all_of(make(**POSTED))
        assert (came, type(error)) == (expected, kind)
        assert script.bodies == [b'a=1']
        if kind is EventStreamError:
            assert (error.code, error.body) == (b'429', b'{"error": 1}')


@on_loops
async def test_a_request_that_may_be_made_again_is_sent_whole():
    async def chunks(*pieces):
        for piece in pieces:
            yield piece

    async with answered(stream(b'retry: 0\ndata: a\n\n'), response(204)) as (make, script):
        assert await all_of(make(
            method=b'POST', reconnects=True, headers=((b'content-length', b'3'),), body=chunks,
            body_args=iter((b'a=', b'1')))) == ([message('a')], None)
    assert script.bodies == [b'a=1'] * 2
    assert len(script.heads) == 2


@on_loops
async def test_a_body_that_can_be_made_only_once_is_not_sent_empty():
    async def chunks():
        yield b'a=1'

    only = chunks()
    async with answered(stream(b'data: a\n\n')) as (make, script):
        came, error = await all_of(make(
            method=b'POST', reconnects=True, pause=0, body=lambda: only,
            headers=((b'content-length', b'3'),)))
    assert came == [message('a')]
    assert 'body must return a new async iterator at each call' in str(error)
    assert len(script.bodies) == 1


@on_loops
async def test_a_get_that_is_not_made_again():
    async with answered(stream(b'data: a\n\n')) as (make, script):
        assert await all_of(make(reconnects=False)) == ([message('a')], None)
    assert len(script.heads) == 1


# --------------------------------------------------------------------------------- compression

@on_loops
async def test_compressed_events_come_when_the_server_flushes():
    async def script(peer):
        await peer.read_head()
        await peer.send(head(EVENTS, b'content-encoding: gzip', b'transfer-encoding: chunked'))
        deflater = zlib.compressobj(wbits=31)
        for number in range(3):
            flushed = (deflater.compress(b'data: %d\n\n' % number)
                       + deflater.flush(zlib.Z_SYNC_FLUSH))
            await peer.send(b'%x\r\n%b\r\n' % (len(flushed), flushed))
            await received.get()
        await peer.closed()

    received = asyncio.Queue()
    async with answered(script, layer=decompressed) as (make, _):
        async with make() as found:
            # The server sends the next one only when this one is here.
            for number in range(3):
                assert await anext(found) == message(str(number))
                received.put_nowait(number)


# --------------------------------------------------------------------------------------- time

@on_clock
async def test_a_silence_that_is_too_long_is_a_lost_connection():
    for options, silence in (({}, 300), ({'max_silence': 20}, 20),
                             ({'max_silence': 20, 'timeouts': {'connect': 9}}, 20),
                             ({'max_silence': 20, 'timeouts': {'read': 7}}, 7)):
        async def script(peer):
            script.heads.append(await peer.read_head())
            await peer.send(response(204) if len(script.heads) > 1 else
                            head(EVENTS) + b': hello\n')
            await peer.closed()

        script.heads, told = [], []
        async with answered(script, pause=1, on_reconnect=lambda *args: told.append(args),  # noqa: B023
                            **options) as (make, _):
            seconds, came, error = await measured_all(make())
        [(attempt, pause, outcome)] = told
        assert (seconds, came, error, attempt, pause) == (silence + 1, [], None, 1, 1)
        assert type(outcome) is HttpDataError
        assert type(outcome.__cause__) is TimeoutError


@on_clock
async def test_it_may_be_silent_for_ever():
    async with answered(holding(head(EVENTS))) as (make, script):
        found = make(max_silence=None)
        task = asyncio.ensure_future(found.__anext__())
        await until(lambda: script.sent)
        await passing(1e6)
        assert not task.done()
        await found.aclose()
        with pytest.raises(StopAsyncIteration):
            await task


class Cancelled:
    """A script that answers as it is told, and tells the last ID of each request."""

    def __init__(self, first):
        self.first = first
        self.ids = []
        self.closed = 0

    async def __call__(self, peer):
        while True:
            self.ids.append(value(await peer.read_head(), b'last-event-id'))
            if len(self.ids) == 2:
                await peer.send(head(EVENTS) + b'id: 2\ndata: b\n\n')
                await peer.closed()
                return
            await peer.send(self.first)
            if not self.first.endswith(b'content-length: 0\r\n\r\n'):
                await peer.closed()
                self.closed += 1
                return


@pytest.mark.parametrize('first', [
    b'', head(EVENTS), head(EVENTS) + b'data: a', head(b'content-length: 9')], ids=[
        'head', 'content', 'event', 'answer'])
@on_loops
async def test_a_cancellation_leaves_no_connection_and_the_next_call_goes_on(first):
    script = Cancelled(first)
    async with answered(script) as (make, _):
        found = make(last_event_id='1')
        task = asyncio.ensure_future(found.__anext__())
        await until(lambda: script.ids)
        await turns(20)
        task.cancel('a message')
        with pytest.raises(asyncio.CancelledError, match='^a message$'):
            await task
        await until(lambda: script.closed)
        assert repr(found).endswith(' not connected failures=0>')
        assert await anext(found) == message('b', '2')
        assert script.ids == [b'1', b'1']
        await found.aclose()


@on_loops
async def test_a_cancellation_in_any_turn_loses_no_event_and_repeats_none():
    async def script(peer):
        script.connections += 1
        script.open += 1
        try:
            asked = await peer.read_head()
            if script.connections % 5 == 0:
                await peer.send(response(503, b'busy'))
                return
            last = int(value(asked, b'last-event-id') or 0)
            await peer.send(head(EVENTS))
            for number in range(last + 1, last + 4):
                await peer.send(b'id: %d\nda' % number, b'ta: %d\n\n' % number)
            await peer.closed()
        finally:
            script.open -= 1

    script.connections = script.open = 0
    came, cancelled = [], 0
    async with answered(script, pause=0, max_pause=0) as (make, _):
        async with make() as found:
            for number in itertools.count():
                task = asyncio.ensure_future(found.__anext__())
                await turns(number % 40)
                task.cancel()
                try:
                    came.append(await task)
                except asyncio.CancelledError:
                    cancelled += 1
                if len(came) >= 20 and cancelled >= 40:
                    break
        # None of the connections is left.
        await until(lambda: script.open == 0)
    assert came == [message(str(number), str(number)) for number in range(1, len(came) + 1)]


@on_clock
async def test_a_pause_that_is_cancelled_is_not_begun_anew():
    script = Cancelled(response(503))
    async with answered(script) as (make, _):
        found = make(pause=10)
        for _ in range(2):
            with pytest.raises(TimeoutError):
                _, task = await measured(asyncio.wait_for(found.__anext__(), 4))
                await task
        seconds, task = await measured(found.__anext__())
        assert (seconds, task.result()) == (2, message('b', '2'))
        await found.aclose()


@on_loops
async def test_a_cancellation_while_it_connects():
    async def get_connection(scheme, host, port):
        tried.append(port)
        if len(tried) == 1:
            await forever()
        return await connecting_to(http=server.port)(scheme, host, port)

    tried = []
    async with Server(holding(head(EVENTS) + b'data: a\n\n')) as server:
        async with pool(get_connection=get_connection) as request:
            found = events(request, server.url)
            task = asyncio.ensure_future(found.__anext__())
            await until(lambda: tried)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await anext(found) == message('a')
            await found.aclose()


# ---------------------------------------------------------------------------------------- ends

@on_loops
async def test_a_stream_that_is_left_is_closed():
    script = holding(head(EVENTS) + b'id: 1\ndata: a\n\nid: 2\ndata: b\n\n')
    async with answered(script) as (make, _):
        async with make() as found:
            assert re.fullmatch('<EventStream http://127.0.0.1:[0-9]+ not connected failures=0>',
                                repr(found))
            async for event in found:
                assert event.data == 'a'
                break
            assert repr(found).endswith(' connected failures=0>')
            # The second one has not been handed out.
            assert found.last_event_id == '1'
        await until(lambda: script.closed == 1)
        assert (found.last_event_id, await all_of(found)) == ('1', ([], None))
        assert repr(found).endswith(' closed failures=0>')
        await found.aclose()

        async for _ in make():
            break
        await until(lambda: script.closed == 2)
        found = make()
        assert await anext(found) == message('a', '1')
        dropped = weakref.ref(found)
        del found
        gc.collect()
        assert dropped() is None
        await until(lambda: script.closed == 3)


@on_loops
async def test_one_task_reads_at_a_time():
    told = []
    async with answered(holding(head(EVENTS))) as (make, script):
        found = make(reconnects=False, on_reconnect=lambda *args: told.append(args))
        task = asyncio.ensure_future(all_of(found))
        await until(lambda: script.sent)
        with pytest.raises(RuntimeError, match='^the events are being read by another task$'):
            await anext(found)
        # Another one may end it.
        await found.aclose()
        assert await task == ([], None)
        await until(lambda: script.closed)
    assert told == []


@on_loops
async def test_the_end_while_the_other_task_connects():
    async def get_connection(scheme, host, port):
        tried.append(port)
        await may_go_on.wait()
        if is_refused:
            raise OSError('no way')
        return await connecting_to(http=server.port)(scheme, host, port)

    for is_refused in True, False:
        tried, may_go_on = [], asyncio.Event()
        script = holding(head(EVENTS) + b'data: a\n\n')
        async with Server(script) as server:
            async with pool(get_connection=get_connection) as request:
                found = events(request, server.url, max_failures=1)
                task = asyncio.ensure_future(all_of(found))
                await until(lambda: tried)  # noqa: B023
                await found.aclose()
                may_go_on.set()
                assert await task == ([], None)
                if not is_refused:
                    await until(lambda: script.closed)  # noqa: B023


@on_clock
async def test_the_end_in_a_pause():
    async with answered(response(503)) as (make, script):
        found = make()
        task = asyncio.ensure_future(all_of(found))
        await until(lambda: script.heads)
        await passing(1)
        await found.aclose()
        await passing(2)
        await until(task.done)
        assert task.result() == ([], None)
        assert len(script.heads) == 1


@on_loops
async def test_what_on_reconnect_raises_ends_it():
    def told(attempt, seconds, outcome):
        raise ZeroDivisionError('enough')

    async with answered(stream(b'data: a\n\n'), on_reconnect=told) as (make, script):
        found = make()
        assert await anext(found) == message('a')
        with pytest.raises(ZeroDivisionError, match='^enough$'):
            await anext(found)
        assert await all_of(found) == ([], None)
        assert len(script.heads) == 1


@on_loops
async def test_an_event_that_is_too_long_ends_it():
    async with answered(stream(b'data: a\n\ndata: ' + b'b' * 100)) as (make, script):
        came, error = await all_of(make(max_event_length=50))
    assert (came, type(error)) == ([message('a')], EventTooLong)
    assert len(script.heads) == 1


async def no_request(*args, **kwargs):
    raise AssertionError


@pytest.mark.parametrize('wrong, message', [
    ({'request': None}, 'request must be a coroutine function, got NoneType'),
    ({'url': b'http://a/'}, "method must be bytes, and url a str, got b'GET' and a bytes"),
    ({'method': 'GET'}, "method must be bytes, and url a str, got 'GET' and a str"),
    ({'last_event_id': 1}, 'last_event_id must be a str without control characters'),
    ({'last_event_id': '1\n'}, 'last_event_id must be a str without control characters'),
    ({'last_event_id': '\ud800'}, 'last_event_id must be a str without control characters'),
    ({'headers': ((b'Last-Event-ID', b'1'),)},
     'headers must not have last-event-id: give last_event_id'),
    ({'max_event_length': 0}, 'max_event_length must be a number of bytes, 1 or more, got 0'),
    ({'reconnects': 1}, 'reconnects must be a bool or None, got 1'),
    ({'pause': -1}, 'pause must be a number, 0 or more, got -1'),
    ({'max_pause': None}, 'max_pause must be a number, 0 or more, got None'),
    ({'max_retry_after': float('inf')}, 'max_retry_after must be a number, 0 or more, got inf'),
    ({'jitter': '1'}, "jitter must be a number, 0 or more, got '1'"),
    ({'max_failures': 0}, 'max_failures must be a number, 1 or more, or None, got 0'),
    ({'on_reconnect': 1}, 'on_reconnect must be a function, got 1'),
])
def test_a_bad_argument_fails_at_once(wrong, message):
    with pytest.raises((TypeError, ValueError), match=f'^{re.escape(message)}$'):
        events(**{'request': no_request, 'url': 'http://a/', **wrong})


@on_one_loop
async def test_other_arguments_are_looked_at_by_the_request():
    async with answered(OK) as (make, _):
        for wrong, text in (({'max_silence': -1}, r"timeouts\['read'\]"),
                            ({'timeouts': {'a': 1}}, 'timeouts must have'),
                            ({'target': b''}, 'target must')):
            with pytest.raises(HttpConnectionError, match=text):
                await anext(make(**wrong))
        with pytest.raises(TypeError, match='nonsense'):
            await anext(make(nonsense=1))


# ---------------------------------------------------------------------------------- the README

BLOCKS = python_blocks(pathlib.Path(__file__).with_name('README.md'))


@pytest.mark.parametrize('block, responses, printed', [
    pytest.param(block, *row, id=name) for block, (name, *row) in zip(BLOCKS, [
        ('for-ever', [stream(b'retry: 0\n\n: hello\nevent: add\ndata: a\n\ndata: no end'),
                      stream(b'data: b\n\n'), response(204)], 'add a\nmessage b\n'),
        ('options', [stream(b'retry: 0\nid: 42\ndata: a\n\n'), response(204)], '42 a\n42\n'),
        ('model', [stream(b'data: {"text": "Hello"}\n\ndata: [DONE]\n\n')], 'Hello\n'),
        ('one-response', [stream(b'id: 1\ndata: a\n\n')], '1 a\n'),
        ('layers', [stream(b'retry: 0\ndata: a\n\n'), response(204)], 'a\n'),
    ], strict=True)])
def test_a_block_of_the_readme_runs_as_it_stands(block, responses, printed, capsys):
    script = Answering(*responses)
    with internet(script):
        run_block(block)
    assert capsys.readouterr().out == printed
    assert len(script.heads) == len(responses)


def test_the_readme_tells_the_defaults():
    text = pathlib.Path(__file__).with_name('README.md').read_text(encoding='utf-8')
    rows = dict(re.findall(r'^\| `(\w+)` \| ([^|]*) \|', text, re.MULTILINE))
    for name, parameter in inspect.signature(events).parameters.items():
        if name in rows:
            default = parameter.default
            assert rows[name].strip('`') == (
                '16 MiB' if name == 'max_event_length' else repr(default))
    assert lowhaio_sse.MAX_EVENT_LENGTH == 16 * 2 ** 20
    assert len(rows) >= 10
