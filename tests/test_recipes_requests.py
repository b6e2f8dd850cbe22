"""The recipes for requests and whole programs keep their word when something goes wrong.

Their functions are called, on both loops, and servers are scripted in bytes.
"""

import asyncio
import contextlib
import functools
import inspect
import io
import os
import socket
import sys
import types

import pytest
import tqdm

from lowhaio import (
    HttpConnectionError,
    HttpDataError,
    HttpError,
    Pool,
    buffered,
    empty_async_iterator,
    streamed,
)
from lowhaio_redirect import redirectable
from lowhaio_retry import retry
from tests.harness import (
    OK,
    PATIENCE,
    Answering,
    Server,
    connecting_to,
    on_loops,
    on_one_loop,
    pool,
    recipe,
    response,
    turns,
    until,
    value,
)


@contextlib.asynccontextmanager
async def answered(*responses):
    """A `request`, and the script that answers it."""
    script = Answering(*responses)
    async with Server(script) as server:
        async with pool(get_connection=connecting_to(http=server.port)) as request:
            yield request, script


@on_loops
async def test_all_of_it_at_once():
    fetch = recipe('whole-response').fetch
    async with answered(OK) as (request, script):
        for content in (None, b'', b'hello'):
            assert await fetch(
                request, b'POST', 'http://name.test/', headers=((b'a', b'b'),), content=content,
                params=(('c', 'd'),)) == (b'200', ((b'content-length', b'2'),), b'ok')
    head = b'POST /?c=d HTTP/1.1\r\nhost: name.test\r\na: b\r\n'
    assert script.heads == [head + end for end in (
        b'\r\n', b'content-length: 0\r\n\r\n', b'content-length: 5\r\n\r\n')]
    assert script.bodies == [b'', b'', b'hello']


def test_dictionaries_of_headers():
    module = recipe('header-dictionary')
    assert list(module.to_pairs({'A': 'b', 'C': ['d', 'é'], 'E': ()})) == [
        (b'A', b'b'), (b'C', b'd'), (b'C', b'\xe9')]
    assert module.to_dict(
        ((b'a', b'b'), (b'set-cookie', b'c'), (b'd', b'\xe9'), (b'a', b'b'))) == {
            'a': 'b, b', 'd': 'é'}


@on_loops
async def test_json():
    module = recipe('json')
    async with answered(
            response(200, b'[null]'), response(204), response(503, b'<p>' * 100),
            response(200, b'<p>')) as (request, script):
        get_json = functools.partial(module.fetch_json, request, b'GET', 'http://name.test/')
        assert await get_json(headers=((b'a', b'b'),)) == [None]
        assert await get_json({}) is None
        with pytest.raises(module.StatusError) as caught:
            await get_json()
        assert caught.value.args == ('503', (b'<p>' * 100)[:200])
        with pytest.raises(ValueError, match='Expecting value'):
            await get_json()
    assert script.heads[0] == (
        b'GET / HTTP/1.1\r\nhost: name.test\r\na: b\r\naccept: application/json\r\n\r\n')
    assert script.bodies == [b'', b'{}', b'', b'']
    assert script.connections == [0] * 4


@on_loops
async def test_files_in_a_form(tmp_path):
    large, empty = tmp_path / 'large.bin', tmp_path / 'a"b\r\n\\\xe9'
    large.write_bytes(os.urandom(1_000_000))
    empty.touch()
    multipart = recipe('multipart').multipart
    headers, body = multipart(
        [('a"\r\nb', 'c\r\n--d'), ('e', b'\0\xff'), ('f', large), ('g', empty)])
    boundary = dict(headers)[b'content-type'].removeprefix(b'multipart/form-data; boundary=')
    begin = b'--' + boundary + b'\r\ncontent-disposition: form-data; name='
    of_unknown_kind = b'content-type: application/octet-stream\r\n\r\n'
    content = (
        begin + b'"a%22%0D%0Ab"\r\n\r\nc\r\n--d\r\n'
        + begin + b'"e"\r\n\r\n\0\xff\r\n'
        + begin + b'"f"; filename="large.bin"\r\n' + of_unknown_kind + large.read_bytes() + b'\r\n'
        + begin + b'"g"; filename="a%22b%0D%0A\\\xc3\xa9"\r\n' + of_unknown_kind + b'\r\n'
        + b'--' + boundary + b'--\r\n')
    async with answered(OK) as (request, script):
        for _ in range(2):  # as a retry does
            await buffered((await request(
                b'POST', 'http://name.test/', headers=headers, body=body))[2])
    assert script.bodies == [content] * 2
    assert max([len(chunk) async for chunk in body()]) == 65536
    assert multipart([])[0] != multipart([])[0]


@pytest.mark.parametrize('change, message', [(1, 'yielded more'), (-1, 'ended 1 bytes short')])
@on_loops
async def test_a_file_in_a_form_that_changes_its_length_meanwhile(change, message, tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(bytes(100))
    headers, body = recipe('multipart').multipart([('file', path)])
    path.write_bytes(bytes(100 + change))
    async with answered(OK) as (request, script):
        with pytest.raises(HttpDataError, match=message):
            await request(b'POST', 'http://name.test/', headers=headers, body=body)
    assert script.heads == []


# ----------------------------------------------------------------------------- downloading

CONTENT = bytes(range(256)) * 4


def whole(etag=b'"1"', content=CONTENT):
    return response(200, content, b'etag: ' + etag)


def cut_off(*responses, at=100):
    """Answers with these, and closes after the head and so many bytes of the body."""
    async def script(peer):
        script.heads.append(await peer.read_head())
        answer = responses[len(script.heads) - 1]
        await peer.send(answer[:answer.index(b'\r\n\r\n') + 4 + at])

    script.heads = []
    return script


def rest(start, end=1024, etag=b'"1"', code=206, total=1024):
    return response(code, CONTENT[start:end], b'etag: ' + etag,
                    b'content-range: bytes %d-%d/%d' % (start, end - 1, total))


def unsatisfied(total, *fields):
    return response(416, b'', b'content-range: bytes */%d' % total, *fields)


# All bars share a lock. From CPython 3.14 on, it has a process of its own, to which there is a
# descriptor: no test is the one that opens it.
tqdm.tqdm.get_lock()


@contextlib.contextmanager
def silent_bars(module):
    """What they were told at first."""
    bars = []

    def bar(**kwargs):
        bars.append((kwargs['initial'], kwargs['total']))
        return tqdm.tqdm(file=io.StringIO(), **kwargs)

    module.tqdm = bar
    yield bars


async def downloaded(path, *responses, at=None, pauses=()):
    """The ranges that were asked for with their conditions, and what the bars began with."""
    module = recipe('resuming-download')
    script = Answering(*responses) if at is None else cut_off(*responses, at=at)
    with silent_bars(module) as bars:
        async with Server(script) as server, pool() as request:
            try:
                await module.download(request, server.url, path, pauses)
                error = None
            except module.DownloadError as caught:
                error = str(caught).replace(server.origin, '').replace(str(path), 'PATH')
    asked = [(value(head, b'range'), value(head, b'if-range')) for head in script.heads]
    assert all(value(head, b'accept-encoding') == b'identity' for head in script.heads)
    return asked, bars, error


NOT_WHOLE = 'PATH is not whole, and no more of it comes'
WHOLE = (None, None)
# Of which 100 bytes are there: the last of them once more.
FROM_99 = (b'bytes=99-', b'"1"')


async def begin(path, etag=b'"1"'):
    """A download of which 100 bytes have come."""
    asked, bars, error = await downloaded(path, whole(etag), at=100)
    assert (asked, bars, error) == ([WHOLE], [(0, 1024)], NOT_WHOLE)
    assert path.with_name('file.part').read_bytes() == CONTENT[:100]


DOWNLOADS = {
    # What is answered to the rest; what is asked for with that; what bars begin with.
    'the rest': ([rest(99)], [FROM_99], [(99, 1024)]),
    'the rest in pieces': (
        [rest(99, 200), rest(199)], [FROM_99, (b'bytes=199-', b'"1"')],
        [(99, 1024), (199, 1024)]),
    'the rest, with 200': ([rest(99, code=200)], [FROM_99], [(99, 1024)]),
    'the rest of another one, with 200': (
        [rest(99, etag=b'"2"', code=200), whole(b'"2"')], [FROM_99, WHOLE], [(0, 1024)]),
    'no ranges': ([whole()], [FROM_99], [(0, 1024)]),
    'it has changed': ([whole(b'"2"')], [FROM_99], [(0, 1024)]),
    'it has changed, and if-range is not known': (
        [rest(99, etag=b'"2"'), whole(b'"2"')], [FROM_99, WHOLE], [(0, 1024)]),
    'the rest has no etag': (
        [response(206, CONTENT[99:], b'content-range: bytes 99-1023/1024'), whole()],
        [FROM_99, WHOLE], [(0, 1024)]),
    'another range': ([rest(98), whole()], [FROM_99, WHOLE], [(0, 1024)]),
    'no range': (
        [response(206, b'a', b'etag: "1"'), whole()], [FROM_99, WHOLE], [(0, 1024)]),
    'another range, with 200': ([rest(0, code=200), whole()], [FROM_99, WHOLE], [(0, 1024)]),
    'it is shorter, and if-range is not known': (
        [unsatisfied(50), whole()], [FROM_99, WHOLE], [(0, 1024)]),
    'another one is as long as what is there, and if-range is not known': (
        [unsatisfied(100, b'etag: "2"'), whole()], [FROM_99, WHOLE], [(0, 1024)]),
    'the server has no time': (
        [response(503), response(429), rest(99)], [FROM_99] * 3, [(99, 1024)]),
}


@pytest.mark.parametrize('case', DOWNLOADS)
@on_loops
async def test_a_download_goes_on_where_it_ended(case, tmp_path):
    responses, asked, bars = DOWNLOADS[case]
    path = tmp_path / 'file'
    path.write_bytes(b'an earlier one')
    await begin(path)
    assert path.read_bytes() == b'an earlier one'
    assert await downloaded(path, *responses, pauses=[0] * (len(responses) - 1)) == (
        asked, bars, None)
    assert path.read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [path]


@on_loops
async def test_a_download_goes_on_as_long_as_bytes_come(tmp_path):
    """Two attempts that bring nothing, one after the other, are too many."""
    path = tmp_path / 'file'
    starts = [99, 198, 297, 297, 396, 396]
    busy = response(503, b'', b'connection: close')
    assert await downloaded(
        path, whole(), rest(99), rest(198), busy, rest(297), busy, busy, at=100,
        pauses=[0, 0]) == (
            [WHOLE, *((b'bytes=%d-' % start, b'"1"') for start in starts)],
            [(0, 1024), (99, 1024), (198, 1024), (297, 1024)], NOT_WHOLE)
    assert await downloaded(path, rest(396)) == ([(b'bytes=396-', b'"1"')], [(396, 1024)], None)
    assert path.read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [path]


@on_loops
async def test_a_download_that_begins_anew_again_and_again_comes_to_an_end(tmp_path):
    """Without an etag, the same bytes are no progress."""
    path = tmp_path / 'file'
    assert await downloaded(path, *[whole(b'')] * 3, at=100, pauses=(0, 0)) == (
        [WHOLE] * 3, [(0, 1024)] * 3, NOT_WHOLE)
    assert await downloaded(
        path, *[whole(b'"1"'), rest(99, etag=b'"2"')] * 2, at=100, pauses=(0, 0, 0)) == (
            [WHOLE, FROM_99] * 2, [(0, 1024)] * 2, NOT_WHOLE)


@on_loops
async def test_a_download_that_is_whole_already(tmp_path):
    path = tmp_path / 'file'
    await begin(path)
    assert await downloaded(path, rest(99, 100, total=100)) == ([FROM_99], [(99, 100)], None)
    assert path.read_bytes() == CONTENT[:100]
    assert list(tmp_path.iterdir()) == [path]


@on_loops
async def test_a_download_of_which_one_byte_has_come_begins_anew(tmp_path):
    path = tmp_path / 'file'
    assert await downloaded(path, whole(), whole(), at=1, pauses=[0]) == (
        [WHOLE] * 2, [(0, 1024)] * 2, NOT_WHOLE)
    assert await downloaded(path, whole()) == ([WHOLE], [(0, 1024)], None)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize('etag', [b'W/"1"', b''])
@on_loops
async def test_a_download_without_a_strong_etag_begins_anew(etag, tmp_path):
    path = tmp_path / 'file'
    await begin(path, etag)
    assert await downloaded(path, whole()) == ([WHOLE], [(0, 1024)], None)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize('code', [302, 404])
@on_loops
async def test_a_download_of_nothing_is_not_tried_again(code, tmp_path):
    path = tmp_path / 'file'
    assert await downloaded(path, response(code), pauses=(0,)) == (
        [WHOLE], [], f'file: the server answered {code}')
    assert list(tmp_path.iterdir()) == []


@on_loops
async def test_a_download_without_a_length(tmp_path):
    async def script(peer):
        await peer.read_head()
        await peer.send(b'HTTP/1.1 200 OK\r\n\r\nhello')

    module = recipe('resuming-download')
    with silent_bars(module) as bars:
        async with Server(script) as server, pool() as request:
            await module.download(request, server.url, tmp_path / 'file')
    assert (tmp_path / 'file').read_bytes() == b'hello'
    assert bars == [(0, None)]


# ------------------------------------------------------------------------------------ events

STREAMS = {
    # What of a stream arrives: types, data and IDs.
    'three lines': ('data: a\ndata: +2\ndata: 10\n\n', [('message', 'a\n+2\n10', '')]),
    'comment, ID, no ID, no end': (
        ': test\n\ndata: first\nid: 1\n\ndata:second\nid\n\ndata:  third\n',
        [('message', 'first', '1'), ('message', 'second', '')]),
    'empty data': ('data\n\ndata\ndata\n\ndata:', [('message', '', ''), ('message', '\n', '')]),
    'one space': ('data:a\n\ndata: a\n\ndata:  a\n\n',
                  [('message', text, '') for text in ('a', 'a', ' a')]),
    'colons': ('data:a:b: c\n\n', [('message', 'a:b: c', '')]),
    'types': ('event: a\ndata: b\n\ndata: c\n\nevent: d\nevent:e\ndata: f\n\n',
              [('a', 'b', ''), ('message', 'c', ''), ('e', 'f', '')]),
    'a type without data': ('event: a\n\ndata: b\n\n', [('message', 'b', '')]),
    'an ID stays': ('id: 1\ndata: a\n\ndata: b\n\n',
                    [('message', 'a', '1'), ('message', 'b', '1')]),
    'an ID alone': ('id: 1\n\ndata: b\n\n', [('message', 'b', '1')]),
    'an ID with NUL': ('id: 1\nid: 2\0\ndata: a\n\n', [('message', 'a', '1')]),
    'an ID that no field can have': (
        'id: 1\tb\nid: 2\x01\nid:\x7f\ndata: a\n\n', [('message', 'a', '1\tb')]),
    'CR': ('data: a\rdata: b\r\rdata: c\r\r', [('message', 'a\nb', ''), ('message', 'c', '')]),
    'CRLF': ('data: a\r\ndata: b\r\n\r\n', [('message', 'a\nb', '')]),
    'CR, CRLF, LF': ('data: a\rdata: b\r\ndata: c\n\ndata: d\r\n\n',
                     [('message', 'a\nb\nc', ''), ('message', 'd', '')]),
    'LF, CR': ('data: a\n\rdata: b\n\n', [('message', 'a', ''), ('message', 'b', '')]),
    'BOM': ('\ufeffdata: a\n\n', [('message', 'a', '')]),
    'BOM twice': ('\ufeff\ufeffdata: a\ndata: b\n\n', [('message', 'b', '')]),
    'BOM later': ('data: a\n\n\ufeffdata: b\n\n', [('message', 'a', '')]),
    'characters': ('data: \xe9\u20ac\U0001f600\x85\u2028\x0b\x0c\x1c\n\n',
                   [('message', '\xe9\u20ac\U0001f600\x85\u2028\x0b\x0c\x1c', '')]),
    'no UTF-8': (b'data: \xff\xc3\n\n', [('message', '\ufffd\ufffd', '')]),
    'unknown fields': ('Data: a\n data: b\ndat: c\ndata : d\ndata: e\n\n', [('message', 'e', '')]),
    'nothing': ('\n\r\n\r:\n\n', []),
}


@pytest.mark.parametrize('case', STREAMS)
def test_a_stream_of_events_is_read_as_browsers_do(case):
    def read(*chunks):
        parser = EventParser('', 3)
        return [tuple(event) for chunk in chunks for event in parser.feed(chunk)]

    EventParser = recipe('server-sent-events').EventParser
    stream, expected = STREAMS[case]
    data = stream if isinstance(stream, bytes) else stream.encode()
    assert read(data) == expected
    assert read(*[data[at:at + 1] for at in range(len(data))]) == expected
    for at in range(len(data)):
        assert read(data[:at], b'', data[at:]) == expected


def test_an_event_is_not_kept_waiting_for_a_line_feed():
    parser = recipe('server-sent-events').EventParser('', 3)
    assert len(list(parser.feed(b'data: a\r\r'))) == 1


def test_what_a_server_says_about_coming_back():
    def retry(text):
        parser = EventParser('', 3)
        assert list(parser.feed(text.encode())) == []
        return parser.retry

    EventParser = recipe('server-sent-events').EventParser
    assert retry('retry: 1500\n') == 1.5
    assert retry('retry: 0\n') == 0
    # A day at most.
    for text in ('86400001', '9' * 400, '9' * 10_000):
        assert retry(f'retry: {text}\n') == 86400
    for text in ('', '1.5', '-1', '+1', '1 ', '\u0663', '1_0'):
        assert retry(f'retry: {text}\n') == 3


@pytest.mark.parametrize('endless', [b'data: ab\n', b'data: ' + b'a' * 100, b':' + b'a' * 100])
def test_an_event_that_does_not_end_is_not_held_for_ever(endless):
    module = recipe('server-sent-events')
    module.MAX_EVENT = 10_000
    parser = module.EventParser('', 3)
    with pytest.raises(module.EventStreamError, match='an event is longer than 10000 characters'):
        for _ in range(2000):
            assert list(parser.feed(endless)) == []


@pytest.mark.parametrize('endless', [
    b': ping\n', b'\n', b'data: ab\n\n', b'event: a\nretry: 1\nid: 1\n'])
def test_a_stream_of_events_need_not_end(endless):
    module = recipe('server-sent-events')
    module.MAX_EVENT = 1000
    parser = module.EventParser('', 3)
    for data in (endless, endless * 10):
        for _ in range(1000):
            list(parser.feed(data))


def stream(content, *fields):
    return response(200, content, b'content-type: text/event-stream', *fields)


async def events_of(*responses, slept=None, **options):
    """What came, with what it ended, and the IDs that the server was told."""
    module = recipe('server-sent-events')
    module.asyncio = types.SimpleNamespace(sleep=sleeping([] if slept is None else slept))
    came = []
    async with answered(*responses) as (request, script):
        error = None
        try:
            async with contextlib.aclosing(
                    module.events(request, 'http://name.test/', **options)) as stream:
                async for event in stream:
                    came.append(event.data)
        except (HttpError, module.EventStreamError) as caught:
            error = type(caught).__name__
    return came, error, [value(head, b'last-event-id') for head in script.heads]


@on_loops
async def test_a_stream_of_events_that_is_lost_goes_on_after_the_last_one():
    assert await events_of(
        stream(b'retry: 0\ndata: a\n\n'),  # no ID yet
        stream(b'id: 1\ndata: b\n\nid: 2\n\n'),  # an ID alone counts
        stream(b'id: 3\ndata: c\n\nid: 4\ndata: no end'),  # one without end does not
        stream(b'data: d\n\n'),  # nor is the last one forgotten
        stream(b'id: \xc3\xa9\ndata: e\n\n'),
        stream(b'id\ndata: f\n\n'),
        response(204)) == (
            ['a', 'b', 'c', 'd', 'e', 'f'], None,
            [None, None, b'2', b'3', b'3', b'\xc3\xa9', None])


@on_loops
async def test_a_stream_of_events_survives_lost_connections():
    async def script(peer):
        script.heads.append(await peer.read_head())
        number = len(script.heads)
        if number == 7:
            await peer.send(response(204))
        elif number % 3 == 0:
            await peer.send(b'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n'
                            b'content-length: 100\r\n\r\nid: %d\ndata: a\n\n' % number)
        # And then, or else, it hangs up.

    script.heads = []
    module = recipe('server-sent-events')
    slept = []
    module.asyncio = types.SimpleNamespace(sleep=sleeping(slept))
    async with Server(script) as server, pool() as request:
        came = [event.id async for event in module.events(
            request, server.url, retry=1, attempts=3)]
    assert came == ['3', '6']
    assert [value(head, b'last-event-id') for head in script.heads] == [
        None, None, None, b'3', b'3', b'3', b'6']
    assert slept == [2, 4, 1, 2, 4, 1]


def sleeping(slept):
    async def sleep(seconds):
        slept.append(seconds)

    return sleep


@on_one_loop
async def test_a_stream_of_events_waits_longer_each_time_but_not_without_end():
    slept = []
    answers = [response(503), None, response(429), response(500), response(502), response(504),
               *[None] * 1100, stream(b'data: a\n\n'), response(503, b'busy'), response(204)]
    assert (await events_of(*answers, slept=slept, longest=20))[:2] == (['a'], None)
    assert slept == [3, 4, 8, 16, 20, *[20] * 1101, 3, 3]
    slept = []
    await events_of(
        stream(b'retry: 30000\n'), None, stream(b'retry: 0\n'), None, None, response(204),
        slept=slept, longest=20)
    assert slept == [30, 30, 0, 2, 4]


@on_loops
async def test_a_stream_of_events_goes_on_after_one_of_an_earlier_run():
    assert await events_of(
        response(503), stream(b'data: a\n\nid: 8\n\n'), response(204), last_id='7\xe9') == (
            ['a'], None, [b'7\xc3\xa9', b'7\xc3\xa9', b'8'])


@on_loops
async def test_a_stream_of_events_gives_up_if_it_is_told_to():
    assert await events_of(None, attempts=3) == ([], 'HttpConnectionClosedError', [None] * 3)
    assert await events_of(response(503), attempts=3) == ([], 'EventStreamError', [None] * 3)


@on_loops
async def test_a_stream_of_events_gives_up_where_time_does_not_help():
    events = recipe('server-sent-events').events
    request, close = Pool()
    with pytest.raises(HttpConnectionError, match='url must'):
        await anext(events(request, 'ftp://name.test/'))
    await close()
    with pytest.raises(HttpConnectionError, match='the pool is closed'):
        await anext(events(request, 'http://name.test/'))


@pytest.mark.parametrize('no_stream', [
    response(404, b'', b'content-type: text/event-stream'), response(200, b'data: a\n\n'),
    response(200, b'data: a\n\n', b'content-type: text/event-streams'), response(501)])
@on_loops
async def test_what_is_no_stream_of_events_is_not_asked_for_again(no_stream):
    assert await events_of(no_stream) == ([], 'EventStreamError', [None])


@on_loops
async def test_the_type_of_a_stream_of_events_is_in_any_case():
    assert await events_of(
        response(200, b'data: a\n\n', b'content-type: Text/Event-Stream ; charset=UTF-8'),
        response(204)) == (['a'], None, [None, None])


@on_loops
async def test_a_stream_of_events_that_is_left_is_closed():
    async def script(peer):
        await peer.read_head()
        await peer.send(b'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n'
                        b'\r\ndata: a\n\ndata: b\n\n')
        assert await peer.closed() == b''
        closed.set()

    closed = asyncio.Event()
    events = recipe('server-sent-events').events
    async with Server(script) as server, pool() as request:
        async with contextlib.aclosing(events(request, server.url)) as stream:
            async for event in stream:
                assert event.data == 'a'
                break
        await closed.wait()


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


@pytest.mark.parametrize('code, times', [(401, 1), (403, 1), (407, 1), (502, 3)])
@on_loops
async def test_a_proxy_whose_refusal_lasts_is_not_asked_again(code, times):
    script = Answering(response(code))
    module = recipe('http-proxy')
    async with Server(script) as proxy:
        get_connection = module.through_http_proxy(f'http://127.0.0.1:{proxy.port}')
        async with pool(get_connection=get_connection) as request:
            with pytest.raises(HttpConnectionError) as caught:
                await retry(request, ((HttpError, (0, 0)),))(b'GET', 'http://name.test/')
    assert isinstance(caught.value.__cause__, module.ProxyError)
    assert script.lines == ['CONNECT name.test:80'] * times


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
    server = await asyncio.start_unix_server(serve, path)
    async with pool(get_connection=through_unix_socket(path)) as request:
        _, _, body = await request(b'GET', 'http://name.test/')
        assert await buffered(body) == b'ok'
    await served.wait()
    server.close()
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
