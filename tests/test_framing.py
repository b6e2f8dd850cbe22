"""What comes over the wire, as a table.

A row of a table in the directory wire has the bytes that the server sends as answer to one
request, and what the client is to make of them. How the bytes are cut on their way is no part of
it, since the outcome must not depend on that: each row is run whole, cut in many ways, with bytes
after its end, and cut short.
"""

import asyncio
import builtins
import itertools
import re
import time

import pytest

import lowhaio
from lowhaio import HttpConnectionClosedError, HttpDataError, HttpHeaderTooLong, buffered
from tests.harness import (
    CLOSED,
    CONTINUE,
    EVIL,
    OK,
    SWITCHING,
    UPGRADE,
    Answering,
    Server,
    chunked,
    cut_into_bytes,
    get,
    head,
    on_loops,
    on_one_loop,
    pool,
    where,
    wire_bytes,
    wire_table,
)


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


def ended(raw, text, **row):
    return bad(raw, f'reading the response {text}', error=HttpConnectionClosedError,
               cause=EOFError, ends=True, **row)


def read_rows(table):
    """The rows of a table in the directory wire. Of each row there is

    - what the server sends: `came`, and `ends` if it closes behind that;
    - the request that it answers, if that is no plain GET: `method`, and fields that are `sent`;
    - what the client is to return: `code` (200), `fields` (any), `body`, `trailers` (none), and
      if the connection is `kept` for the next request (true);
    - or the `error`, its `cause` (ValueError), all of its `text` behind method, origin and peer,
      and if the response had `started` (true).

    Bytes are text of which each character is a byte; [3, "x"] is "xxx".
    """
    def pairs(fields):
        return tuple((wire_bytes(name), wire_bytes(value)) for name, value in fields)

    rows = {}
    for name, row in wire_table(table).items():
        request = {'method': row.get('method', 'GET').encode(), 'sent': pairs(row.get('sent', ())),
                   'ends': row.get('ends', False)}
        came = wire_bytes(row['came'])
        if 'error' in row:
            rows[name] = bad(
                came, ''.join(row['text']), error=getattr(lowhaio, row['error']),
                cause=getattr(builtins, row.get('cause', 'ValueError')),
                started=row.get('started', True), **request)
        else:
            rows[name] = good(
                came, wire_bytes(row['body']), code=row.get('code', '200').encode(),
                fields=pairs(row['fields']) if 'fields' in row else None,
                trailers=pairs(row.get('trailers', ())), kept=row.get('kept', True), **request)
    return rows


STATUS_LINE = read_rows('status_line')
FRAMED = {name: row for table in ('interim', 'no_body', 'coding', 'length', 'chunks')
          for name, row in read_rows(table).items()}
ROWS = {**STATUS_LINE, **read_rows('fields'), **FRAMED, **read_rows('persistence')}


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


WAYS = {
    'byte by byte': (cut_into_bytes, {}),
    'cut after each line': (re.compile(rb'[^\n]*\n|[^\n]+').findall, {}),
    'cut in the middle of each CRLF': (re.compile(rb'[^\r]*\r|[^\r]+').findall, {}),
    'read byte by byte': (lambda raw: [raw], {'recv_bufsize': 1}),
    'read in sevens': (lambda raw: [raw], {'recv_bufsize': 7}),
}

LONG = 2000


@pytest.mark.parametrize('name', ROWS)
@on_one_loop
async def test_a_response_has_the_outcome_of_its_row(name):
    row = ROWS[name]

    def runs():
        yield ('whole', row.expected, row, [row.raw]), {}
        if row.expected['kept']:
            yield ('in a read that it fills', row.expected, row, [row.raw]), {
                'recv_bufsize': len(row.raw)}

    assert await wrong_outcomes(runs()) == {}


@pytest.mark.parametrize('name', ROWS)
@on_one_loop
async def test_a_response_has_the_outcome_of_its_row_however_it_is_cut(name):
    row = ROWS[name]
    assert await wrong_outcomes(
        ((way, row.expected, row, [piece for piece in cut(row.raw) if piece]), options)
        for way, (cut, options) in WAYS.items()
        if len(row.raw) < LONG or options.get('recv_bufsize') != 1) == {}


TO_HTTP_1_0 = read_rows('http_1_0')


@pytest.mark.parametrize('name', TO_HTTP_1_0)
@on_loops
async def test_a_request_of_http_1_0_needs_a_response_that_says_keep_alive(name):
    row = TO_HTTP_1_0[name]
    runs = [((name, row.expected, row, [row.raw]), {'http_version': b'HTTP/1.0'})]
    assert await wrong_outcomes(runs) == {}


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


WHOLE = {name: row for name, row in ROWS.items() if 'error' not in row.expected}
SURPLUS = dict(zip((name for name, row in WHOLE.items() if not row.ends),
                   itertools.cycle((EVIL, b'\x00', b'\r\n', b'0\r\n\r\n'))))


@pytest.mark.parametrize('name', SURPLUS)
@on_loops
async def test_bytes_after_the_end_are_never_delivered_and_close_the_connection(name):
    row, more = ROWS[name], SURPLUS[name]
    expected = {**row.expected, 'kept': False}
    assert await wrong_outcomes(
        ((way, expected, row, pieces), {'surplus': True, **options}) for way, pieces, options in (
            ('at once', [row.raw + more], {}),
            # It must not be taken for the end of a section that ends before.
            ('at once, an empty line', [row.raw + b'a: b\n\n'], {}),
            # The first read is filled by the response: what follows is not in it.
            ('in the next read', [row.raw + more], {'recv_bufsize': len(row.raw)}),
            ('later', [row.raw, more], {}))) == {}


def end_of_head(raw):
    """Where the body starts."""
    end = 0
    while True:
        start, end = end, re.compile(rb'\n\r?\n').search(raw, end).end()
        if not re.match(rb'HTTP/1.. 1(?!01)', raw[start:]):
            return end


CUT_SHORT = [name for name in WHOLE if name in FRAMED or name == 'status line']


@pytest.mark.parametrize('name', CUT_SHORT)
@on_loops
async def test_a_response_cut_short_is_never_taken_for_a_whole_one(name):
    row = ROWS[name]
    body_starts = end_of_head(row.raw)
    last = body_starts if row.ends else len(row.raw)
    line_ends = [match.end() for match in re.finditer(b'\n', row.raw)][-4:]

    def runs():
        for cut in {0, 1, last - 2, last - 1, *line_ends}:
            if cut < last:
                phase = 'head' if cut < body_starts else 'body'
                expected = ended(b'', phase, started=cut > 0).expected
                yield (f'{cut} bytes', expected, row, [row.raw[:cut]]), {'ends': True}

    wrong = await wrong_outcomes(runs())
    # The texts begin with what is expected, and have rows of their own.
    for cut, difference in list(wrong.items()):
        text, phase = difference.pop('text')
        if text.startswith(f'{phase}: {CLOSED}') and not difference:
            del wrong[cut]
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
