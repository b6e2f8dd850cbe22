"""Makes the bytes of the searches, and gives them to lowhaio and to other parsers.

An outcome is what a caller sees: a response with its body and trailers, or the kind of an error.
"""
import asyncio
import contextlib
import ipaddress
import itertools
import re
import select
import selectors
import socket
import ssl
import sys
import time
import tracemalloc
import urllib.parse
from functools import partial
from pathlib import Path
from typing import NamedTuple

import h11
import httptools
import idna
from aiodnsresolver import IPv4AddressExpiresAt
from hypothesis import strategies as st

# For the harness of the tests, wherever lowhaio comes from.
sys.path.insert(1, str(Path(__file__).parents[1]))

from lowhaio import HttpConnectionError, HttpError, Pool, buffered  # noqa: E402
from tests.harness import turns  # noqa: E402


class Broken(AssertionError):
    """A promise that was not kept."""


def check(is_kept, broken):
    if not is_kept:
        raise Broken(broken)


# -------------------------------------------------------------------------- what lowhaio says

class Outcome(NamedTuple):
    error: str = ''
    code: bytes = b''
    fields: tuple = ()
    body: bytes = b''
    trailers: tuple = ()
    # Whether the response was known to be whole before the connection ended.
    is_framed: bool = False

    def __str__(self):
        return self.error or repr(self[1:])


INCOMPLETE = Outcome('incomplete')


class Client:
    """Gives the bytes of a server to lowhaio, through one end of a pair of sockets."""

    def __init__(self):
        self.selector = selectors.DefaultSelector()
        self.loop = asyncio.SelectorEventLoop(self.selector)
        self.failures = []
        self.loop.set_exception_handler(lambda _, context: self.failures.append(context))

    def peak(self, pieces, **options):
        """The most memory, in bytes, that is in use while a response is read."""
        tracemalloc.start()
        try:
            self.loop.run_until_complete(self.run_pieces(pieces, b'GET', options, discarded))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def outcome(self, data, cuts=(), method=b'GET', **options):
        """The outcome of these bytes, in pieces that end at the cuts, and then the end."""
        bounds = sorted({0, len(data), *(cut for cut in cuts if 0 < cut < len(data))})
        pieces = [data[start:end] for start, end in itertools.pairwise(bounds)]
        return self.loop.run_until_complete(self.run_pieces(pieces, method, options, buffered))

    async def run_pieces(self, pieces, method, options, use):
        ours, theirs = socket.socketpair()
        ours.setblocking(False)

        async def get_connection(scheme, host, port):
            return theirs

        request, close = Pool(get_connection=get_connection, **options)
        task = self.loop.create_task(self.read(request, method, use))
        # If the request were left unread, the end would be a reset.
        await self.loop.sock_recv(ours, 65536)
        with ours, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                await self.loop.sock_sendall(ours, piece)
                await turns(3)
            # The connection has not ended yet, but the response may be known to be whole. Nothing
            # that is registered may be ready now, or the loop would spin.
            await turns(5)
            check(not select.select([self.selector.fileno()], [], [], 0)[0],
                  'the loop spins, waiting for the rest of a response')
        is_framed = task.done()
        outcome = await task
        await close()
        check(not self.failures, f'the loop was told of {self.failures}')
        return outcome if outcome.error else outcome._replace(is_framed=is_framed)

    async def read(self, request, method, use):
        try:
            code, fields, body = await request(method, 'http://name.test/')
            return Outcome('', code, fields, await use(body), body.trailers)
        except HttpError as error:
            return Outcome(type(error).__name__)

    def close(self):
        self.loop.close()


async def discarded(body):
    async for _ in body:
        pass
    return b''


# ----------------------------------------------------------------------- what the others say

def outcome_of_h11(data, method=b'GET'):
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=2 ** 24)
    connection.send(h11.Request(method=method, target=b'/', headers=[(b'host', b'name.test')]))
    connection.send(h11.EndOfMessage())
    body = []
    try:
        for more in (data, b''):
            connection.receive_data(more)
            while (event := connection.next_event()) is not h11.NEED_DATA:
                if isinstance(event, h11.Response):
                    final = event
                elif isinstance(event, h11.Data):
                    body.append(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    return Outcome(
                        '', b'%03d' % final.status_code, tuple(final.headers), b''.join(body),
                        tuple(event.headers), more != b'')
                elif isinstance(event, h11.ConnectionClosed):
                    return Outcome('closed')
    except h11.RemoteProtocolError as error:
        return Outcome(str(error))
    return INCOMPLETE


class Parsed:
    """Collects what httptools calls back with, up to the end of the final response."""

    def __init__(self):
        self.is_whole = False
        self.on_message_begin()

    def on_message_begin(self):
        if not self.is_whole:
            self.has_head = False
            self.fields, self.trailers, self.body = [], [], []

    def on_header(self, name, value):
        if not self.is_whole:
            (self.trailers if self.has_head else self.fields).append((name.lower(), value))

    def on_headers_complete(self):
        if not self.is_whole:
            self.has_head = True
            self.code = self.parser.get_status_code()

    def on_body(self, data):
        if not self.is_whole:
            self.body.append(data)

    def on_message_complete(self):
        self.is_whole = self.is_whole or self.code >= 200


def outcome_of_httptools(data):
    """The outcome of httptools, which knows neither of HEAD nor of the end of a connection."""
    parsed = Parsed()
    parsed.parser = httptools.HttpResponseParser(parsed)
    try:
        parsed.parser.feed_data(data)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
        if not parsed.is_whole:
            return Outcome(str(error))
    if not parsed.is_whole:
        return INCOMPLETE
    return Outcome('', b'%03d' % parsed.code, tuple(parsed.fields), b''.join(parsed.body),
                   tuple(parsed.trailers), True)


def difference(ours, theirs):
    """How the outcomes differ, or None if they are the same or lowhaio refuses."""
    if ours.error:
        return None
    if theirs.error:
        return f'refused: {theirs.error}'
    for what in Outcome._fields[1:]:
        if getattr(ours, what) != getattr(theirs, what):
            return f'{what}: {getattr(theirs, what)!r}'
    return None


class Difference(NamedTuple):
    """Something that lowhaio accepts and another parser refuses or reads differently, and why."""

    parser: str
    # What the other parser says, and patterns of the request's method and of the bytes.
    said: str
    data: bytes
    reason: str


BARE_LF = rb'(?<!\r)\n'
FOLD = rb'\n[ \t]'
NO_BODY = rb'^HEAD |HTTP/1\.[0-9] (1[0-9]{2}|204|304)'
CODE_BELOW_100 = rb'HTTP/1\.[0-9] 0'
CODES = 'any three digits are a status code: what it means is for the caller'
CODING = rb'(?i)\ntransfer-encoding:'
DIFFERENCES = (
    Difference('httptools', '^refused: (Missing|Expected|Invalid)', BARE_LF,
               'a bare LF ends a line, as RFC 9112 2.2 allows'),
    Difference('httptools', '^refused: (Unexpected whitespace after|Invalid) header value', FOLD,
               'obs-fold is replaced by a space, as RFC 9112 5.2 has it'),
    Difference('h11', '^(fields|trailers): ', rb'[ \t]\r?\n[ \t]',
               'obs-fold and the white space before it are one space; h11 keeps the latter'),
    Difference('httptools', '^refused: Invalid (header value char|response status|token)',
               rb'[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]',
               'control characters in a reason or value, as servers send them, end no line'),
    Difference('h11', '^refused: illegal (header|status) line', rb'[\x0b\x0c]',
               'control characters that h11 takes for whitespace end no line'),
    Difference('h11', '^refused: .*status_code', CODE_BELOW_100, CODES),
    Difference('httptools', '', CODE_BELOW_100, CODES),
    Difference('h11', '^refused: .*(Transfer-Encoding|Content-Length)', NO_BODY,
               'without a body, framing does not matter (RFC 9112 6.3, 1)'),
    Difference('httptools', '^refused: .*(Transfer-Encoding|Content-Length)', NO_BODY,
               'without a body, framing does not matter (RFC 9112 6.3, 1)'),
    Difference('h11', '^refused: .*Transfer-Encoding', CODING + rb'[ \t]*identity',
               'identity is no coding: servers of RFC 2616 send it'),
    Difference('httptools', '^refused: .*Transfer-Encoding', CODING,
               'chunked is stronger than a length (RFC 9112 6.3, 3); such a connection closes'),
    Difference('httptools', '^refused: Duplicate Content-Length', rb'(?i)content-length',
               'equal lengths are one (RFC 9110 8.6)'),
    Difference('httptools', '^refused: Invalid character in chunk ext', rb'[0-9A-Fa-f][ \t]*;',
               'chunk extensions are skipped, whatever is in them but CR, LF and NUL'),
    Difference('httptools', '^refused: Invalid character in chunk size', rb'[0-9A-Fa-f][ \t]+;',
               'white space before a chunk extension is allowed (RFC 9112 7.1.1)'),
    Difference('h11', '^refused: illegal chunk header', rb'[0-9A-Fa-f][ \t]+;',
               'white space before a chunk extension is allowed (RFC 9112 7.1.1)'),
    Difference('httptools', '^refused: Invalid character in chunk size', rb'[0-9A-Fa-f][ \t]+\r\n',
               'white space after a chunk size is skipped: servers pad it'),
    Difference('httptools', '^refused: Invalid HTTP version', rb'HTTP/1\.[2-9] ',
               'a higher minor version is read as HTTP/1.1 (RFC 9110 2.5)'),
    Difference('h11', '^refused: .*Transfer-Encoding', CODING + rb'[ \t]*(,|chunked[ \t]*,|\r?\n)',
               'empty members of a list do not count (RFC 9110 5.6.1)'),
    Difference('h11', '^refused: .*(Transfer-Encoding|Content-Length)',
               rb'(?is)\n[0-9]+[^\n]*\n(.*\n)?(transfer-encoding|content-length):',
               'in trailers, framing does not matter (RFC 9112 7.1.2)'),
    Difference('h11', '^fields: .*content-length', rb'(?is)content-length.*content-length',
               'h11 gives equal lengths once; fields are given as they came'),
    Difference('httptools', '^refused: Data after `Connection: close`', rb'HTTP/1\.0 1',
               'an interim response is not the last one, not in HTTP/1.0 either'),
    Difference('h11', '^fields: .*transfer-encoding', CODING + rb'\s*.*[A-Z]',
               'h11 turns the coding into lower case; values are given as they came'),
    Difference('httptools', '^(fields|trailers|refused: incomplete)', rb'[ \t]\r?\n',
               'httptools leaves white space at the end of some values (RFC 9112 5.1)'),
)


def check_parsed(client, data, cuts, method, seen):
    """Check that bytes have the same outcome however they are cut, and compare it with others."""
    ours = client.outcome(data, (), method)
    for bounds in (cuts, range(len(data)) if len(data) < 60 else ()):
        check((cut := client.outcome(data, bounds, method)) == ours,
              f'{data!r} is {ours}, but cut at {list(bounds)}: {cut}')
    seen['accepted' if not ours.error else f'refused with {ours.error}'] += 1
    others = {'h11': outcome_of_h11(data, method)}
    if method != b'HEAD':
        others['httptools'] = outcome_of_httptools(data)
    for parser, theirs in others.items():
        said = difference(ours, theirs)
        # httptools does not learn that the connection has ended.
        if said is not None and (parser == 'h11' or ours.is_framed or theirs != INCOMPLETE):
            known = explanation(parser, said, method + b' ' + data)
            check(known is not None, f'{data!r} is {ours}, but {parser} says: {said}')
            seen[known] += 1


def explanation(parser, said, data):
    """The explanation of a difference, or None if it is not a known one."""
    for known in DIFFERENCES:
        if (known.parser == parser and re.search(known.said, said)
                and re.search(known.data, data)):
            return known
    return None


# -------------------------------------------------------------------- what a server may send

def some(*values):
    return st.sampled_from(values)


def mostly(right, anything):
    """Mostly right, so that something with many parts is wrong in only a few of them."""
    return st.integers(0, 9).flatmap(lambda number: anything if number == 9 else right)


LINE_ENDS = mostly(some(b'\r\n'), some(b'\n', b'\r', b'\r\r\n', b'\n\r', b''))
VERSIONS = mostly(some(b'HTTP/1.1', b'HTTP/1.0'), some(
    b'HTTP/1.2', b'HTTP/2.0', b'http/1.1', b'HTTP/1.', b'HTTP/11', b'HTTP/1.1 ', b'ICY'))
STATUS_CODES = mostly(some(b'200', b'404'), some(
    b'204', b'304', b'100', b'103', b'101', b'099', b'000', b'999', b'20', b'2000', b'2 0',
    b'+20'))
REASONS = mostly(some(b' OK', b'', b' '), some(
    b'  ', b' \x00', b' \x01', b' \xe9', b'\tOK', b' a\rb', b' \x7f', b' a\tb'))
NAMES = mostly(some(b'x', b'X-Any', b'a_b'), some(
    b'', b' x', b'x ', b'x y', b'x\t', b'\xe9', b'!', b'(', b'"', b'content-length',
    b'Content-Length ', b'transfer-encoding', b'Transfer-Encoding\t', b'connection', b'keep-alive',
    b'trailer'))
VALUES = st.one_of(
    some(b'', b' ', b'a', b'a b', b'\ta\t', b'"', b'\x00', b'\x01', b'\x0b', b'\x0c', b'\x7f',
         b'\x80', b'\xff', b'a\rb', b'a\r\n b', b'a\n\tb', b'a\r\n \r\n b', b'a: b', b'0', b'1',
         b'5', b'05', b'+5', b'-1', b'5, 5', b'5,6', b'0x5', b'1_0', b'5.0', b'\xb2', b'9' * 20,
         b'9' * 21, b'chunked', b'Chunked', b'chunked,', b', chunked', b'gzip, chunked',
         b'chunked, chunked', b'identity', b'identity, chunked', b'chunked;a=b', b'xchunked',
         b'"chunked"', b'\x0bchunked', b'chunked\x0c', b'close', b'keep-alive', b'Close, x',
         b'timeout=5', b'timeout=1'),
    st.binary(max_size=6))
SPACES = mostly(some(b' ', b''), some(b'\t', b'  ', b'\r\n '))
LENGTHS = mostly(some(b'5'), VALUES)
CODINGS = mostly(some(b'chunked', b'Chunked'), VALUES)
FRAMINGS = st.one_of(
    st.tuples(st.tuples(some(b'content-length', b'Content-Length'), LENGTHS)),
    st.tuples(st.tuples(some(b'transfer-encoding', b'Transfer-Encoding'), CODINGS)),
    mostly(st.just(()), st.lists(st.one_of(
        st.tuples(st.just(b'content-length'), LENGTHS),
        st.tuples(st.just(b'transfer-encoding'), CODINGS)), max_size=3)))
SIZES = some(b'05', b'A', b'a', b'0', b'', b' 5', b'5 ', b'0x5', b'+5', b'-5', b'1_0', b'5h',
             b'0' * 15 + b'5', b'0' * 16 + b'5', b'f' * 16, b'\xb2')
EXTENSIONS = mostly(some(b'', b';a=b'), some(
    b';', b';a', b' ;a', b'\t;a="b"', b';"\r"', b';\x00', b';\n', b' ', b'\t', b',a', b';a '))


@st.composite
def sections(draw, framing=()):
    """Field lines and the empty line after them."""
    fields = draw(st.lists(st.tuples(NAMES, mostly(some(b'a', b''), VALUES)), max_size=2))
    fields[draw(st.integers(0, len(fields))):0] = framing
    return b''.join(name + b':' + draw(SPACES) + value + draw(LINE_ENDS)
                    for name, value in fields) + draw(LINE_ENDS)


@st.composite
def chunked(draw):
    chunks = draw(st.lists(some(b'hello', b'0123456789', b'\r\n\r\n0'), max_size=2))
    return b''.join(
        draw(mostly(st.just(b'%x' % len(chunk)), SIZES)) + draw(EXTENSIONS) + draw(LINE_ENDS)
        + chunk + draw(LINE_ENDS) for chunk in chunks
    ) + draw(mostly(some(b'0'), some(b'00', b'', b'1'))) + draw(EXTENSIONS) + draw(LINE_ENDS)


@st.composite
def responses(draw):
    """Responses that are almost right."""
    status = draw(VERSIONS) + b' ' + draw(STATUS_CODES) + draw(REASONS) + draw(LINE_ENDS)
    head = status + draw(sections(draw(FRAMINGS)))
    if b'hunked' in head:
        content = draw(chunked()) + draw(sections())
    else:
        content = draw(mostly(some(b'hello'), some(b'', b'hell', b'hello!')))
    return head + content + draw(mostly(some(b''), some(b'\r\n', b'HTTP/1.1 200 OK\r\n\r\n')))


RIGHT = (
    b'HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello',
    b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n',
    b'HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\nX: a\r\n b\r\n\r\n'
    b'3;a=b\r\nabc\r\nA\r\n0123456789\r\n0\r\nx-sum: 1\r\nX: 2\r\n\r\n',
    b'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 x\r\nlink: a\r\n\r\n'
    b'HTTP/1.1 404 Not Found\ncontent-length: 5\n\nhello',
    b'HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 0\r\n\r\n',
    b'HTTP/1.1 200 OK\r\nserver: any\r\n\r\nto the end',
    b'HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n',
)
SPECIAL = (b'\r', b'\n', b'\r\n', b'\r\n\r\n', b'\n\n', b' ', b'\t', b':', b';', b',', b'\0',
           b'\x0b', b'\x7f', b'\x80', b'0', b'5', b'a', b'+', b'HTTP/1.1 ',
           b'content-length: 5\r\n', b'transfer-encoding: chunked\r\n',
           b'connection: close\r\n')


@st.composite
def mutated(draw):
    """Right responses that were changed in a few places."""
    data = draw(st.sampled_from(RIGHT))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(data)))
        end = start + draw(some(0, 0, 0, 1, 1, 2, 5))
        data = data[:start] + draw(st.one_of(
            st.just(b''), st.sampled_from(SPECIAL), st.binary(max_size=2))) + data[end:]
    return data


ANYTHING = st.one_of(responses(), responses(), mutated(), st.binary(max_size=100))
CUTS = st.lists(st.integers(1, 200), max_size=6)
METHODS = some(b'GET', b'GET', b'GET', b'HEAD')


# ------------------------------------------------------------------------------ time and memory
#
# Each function makes a response that grows with its argument, and the options that let it grow.

HEAD = b'HTTP/1.1 200 OK\r\n'
CHUNKED = HEAD + b'transfer-encoding: chunked\r\n\r\n'
GROWING = {
    'status line without end': lambda n: HEAD[:-2] + b'a' * n,
    'spaces in the status line': lambda n: HEAD[:9] + b' ' * n + b'\r\n\r\n',
    'small fields': lambda n: HEAD + b'a:b\r\n' * (n // 5) + b'\r\n',
    'different fields': lambda n: HEAD + b''.join(b'%x:\r\n' % i for i in range(n // 7)) + b'\r\n',
    'long name': lambda n: HEAD + b'a' * n + b'\r\n\r\n',
    'spaces before a value': lambda n: HEAD + b'a:' + b' ' * n + b'\0\r\n\r\n',
    'spaces in a value': lambda n: HEAD + b'a:b' + b' ' * n + b'\0\r\n\r\n',
    'spaces between letters': lambda n: HEAD + b'a:' + b' \tb' * (n // 3) + b'\r\0\r\n\r\n',
    'folded lines': lambda n: HEAD + b'a:b' + b'\r\n c' * (n // 4) + b'\r\n\r\n',
    'folded lines of spaces': lambda n: HEAD + b'a:b' + b'\r\n  ' * (n // 4) + b'\r\n\r\n',
    'spaces before a fold': lambda n: HEAD + b'a:b' + b' ' * n + b'\r\n c\r\n\r\n',
    'spaces, and a fold elsewhere': lambda n: HEAD + b'a:b' + b' ' * n + b'c\r\n d\r\n\r\n',
    'line ends': lambda n: b'\r\n' * (n // 2),
    'carriage returns': lambda n: HEAD + b'a:' + b'\r' * n + b'\n\r\n',
    'connection options': lambda n: HEAD + b'connection: ' + b', ' * (n // 2) + b'\r\n\r\n',
    'spaces in connection': lambda n: HEAD + b'connection: ,' + b' ' * n + b'x\r\n\r\n',
    'keep-alive': lambda n: HEAD + b'keep-alive: timeout' + b' timeout' * (n // 8) + b'\r\n\r\n',
    'digits of content-length': lambda n: HEAD + b'content-length: ' + b'0' * n + b'\r\n\r\n',
    'interim responses': lambda n: (
        b'HTTP/1.1 103 x\r\n' + b'a: b\r\n' * (n // 600) + b'\r\n') * 100 + HEAD + b'\r\n',
    'one-byte chunks': lambda n: CHUNKED + b'1\r\na\r\n' * (n // 6) + b'0\r\n\r\n',
    'chunk extension': lambda n: CHUNKED + b'1;' + b'a' * n + b'\r\na\r\n0\r\n\r\n',
    'chunk extension without end': lambda n: CHUNKED + b'1;' + b'a' * n,
    'spaces in a chunk-size line': lambda n: CHUNKED + b'1' + b' ' * n + b'\r\n',
    'digits of a chunk size': lambda n: CHUNKED + b'0' * n,
    'trailers': lambda n: CHUNKED + b'0\r\n' + b'a: b\r\n' * (n // 6) + b'\r\n',
    'folded trailers': lambda n: CHUNKED + b'0\r\na: b' + b'\r\n  ' * (n // 4) + b'\r\n\r\n',
    'content': lambda n: HEAD + b'\r\n' + b'a' * n,
}
BOUNDLESS = {'max_header_length': 2 ** 30}


def cpu_of(function, rounds=3):
    """The CPU of a function in seconds: the least of some rounds."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def check_linear(what, run, size, largest, enough=0.03):
    """Check that four times the input takes at most eight times the CPU.

    The input grows until it takes enough CPU to tell. If it took too much, that may have been a
    disturbance, so it is measured again, more and more often.
    """
    def times(rounds):
        return [cpu_of(partial(run, length), rounds) for length in (size, 4 * size)]

    once, fourfold = times(1)
    while fourfold < 2 * enough and 2 * size < largest:
        size *= 2
        once, fourfold = times(1)
    for rounds in (3, 10, 30):
        if fourfold < 2 * enough or fourfold <= 8 * once:
            return
        if fourfold < 1:
            once, fourfold = times(rounds)
    check(fourfold <= 8 * once, f'{what}: {size} bytes take {once * 1000:.0f} ms of CPU, '
                                f'four times as many {fourfold * 1000:.0f} ms')


# The beginning of a response, and what is repeated after it, to be more than anything may hold.
ENDLESS = {
    'a status line': (b'HTTP/1.1 200 ', b'a' * 4096),
    'fields': (HEAD, b'a: b\r\n' * 512),
    'folded lines': (HEAD + b'a: b', b'\r\n c' * 1024),
    'interim responses': (b'', b'HTTP/1.1 103 x\r\na: b\r\n\r\n' * 100),
    'content to the end': (HEAD + b'\r\n', b'a' * 4096),
    'content with a length': (HEAD + b'content-length: 99999999999\r\n\r\n', b'a' * 4096),
    'small chunks': (CHUNKED, b'8\r\n12345678\r\n' * 256),
    'one chunk': (CHUNKED + b'f' * 15 + b'\r\n', b'a' * 4096),
    'a chunk extension': (CHUNKED + b'1;', b'a' * 4096),
    'zeros': (CHUNKED, b'0' * 4096),
    'trailers': (CHUNKED + b'0\r\n', b'a: b\r\n' * 512),
}


def check_memory(client, what, length, limit):
    start, more = ENDLESS[what]
    peak = client.peak([start, *[more] * (length // len(more))])
    check(peak <= limit, f'{what}: {length} bytes take {peak} bytes of memory')
    return peak


# --------------------------------------------------------------------- what a caller may send

class Request(NamedTuple):
    method: bytes
    url: str
    params: tuple
    headers: tuple
    chunks: list
    http_version: bytes


TOKENS = st.one_of(some(b'GET', b'POST', b'HEAD', b'PUT', b'get', b'CONNECT', b'connect',
                        b'M-SEARCH', b"!#$%&'*+-.^_`|~", b'', b' ', b'GET ', b'G T', b'GET\r\n',
                        b'G\0', b'\xe9'),
                   st.binary(max_size=3))
NAMES_SENT = st.one_of(
    some(b'x', b'X', b'Host', b'host', b'content-length', b'Content-Length', b'transfer-encoding',
         b'Transfer-Encoding', b'connection', b'expect', b'upgrade', b'', b'x ', b' x', b'x:',
         b'x\r\ny', b'\xe9'), st.binary(max_size=2))
VALUES_SENT = st.one_of(
    some(b'', b'a', b' a\t', b'a\r\nb: c', b'a\nb', b'a\rb', b'a\0', b'a\n', b'\xe9', b'\x7f',
         b'5', b'3', b'0', b'+5', b'5, 5', b'05', b' 5', b'chunked', b'Chunked',
         b'gzip, chunked', b'chunked, gzip', b'identity', b'close', b'100-continue',
         b'chunked, chunked', b'"a, chunked', b'a;b="c, chunked", chunked', b', chunked',
         b'example.com', b'example.com\r\n', b'a:80', b'a:b', b'a, b', b'[::1]:80', b'[::1',
         b'a/b', b'user@a'),
    st.binary(max_size=3))
FIELDS_SENT = st.tuples(some(b'x', b'X-Any', b'aCCept', b'host'), some(b'', b'a', b'a b',
                                                                       b'\xe9\t"'))
FRAMINGS_SENT = some((), (), ((b'content-length', b'5'),), ((b'Content-Length', b'5'),),
                     ((b'Transfer-Encoding', b'chunked'),), ((b'content-length', b'0'),),
                     ((b'content-length', b'5'), (b'content-length', b'5')),
                     ((b'content-length', b'5'), (b'transfer-encoding', b'chunked')))
BODIES = some([], [], [b'hello'], [b'', b'he', b'', b'llo'], [b'hell'], [b'hello', b'!'], [b''],
              *2 * ([b'5\r\nhello\r\n0\r\n\r\n'], [b'5\r\nhel', b'lo\r\n0\r\n\r\n']),
              [b'0\r\n', b'\r\n'], [b'5\r\nhello\r\n', b'0\r\n\r\n', b'GET / HTTP/1.1\r\n\r\n'],
              [b'5', b'\r', b'\nhello\r', b'\n0\r\na: b\r', b'\n\r\n'], [b'5\r\nhello\r\n'],
              [b'5\r\nhello\n0\r\n\r\n'], [b'5 \r\nhello\r\n0\r\n\r\n'],
              [b'5;a=b\r\nhello\r\n000;c\r\n\r\n'])
TEXT = st.text(st.characters(), max_size=5)
IN_TARGETS = (
    '/', '?', '#', '%', '%2', '%2f', '%2F', '%zz', ' ', '+', '"', '<', '>', '\\', '^', '`', '{',
    '|', '}', '[', ']', '@', ':', '&', '=', ';', '\xe9', '\u20ac', '\U0001f600', '\ud800', '\r\n',
    '\t', '\0', '\x7f', '\x85', '\u2028', 'a', '..', '//', '\uff0f', '\u3000')
TARGETS = st.builds('{}{}'.format, some('/', '/', '/', '?', '#'), st.one_of(
    TEXT, st.builds(''.join, st.lists(st.sampled_from(IN_TARGETS), max_size=6))))


@st.composite
def requests_sent(draw):
    headers = draw(st.lists(mostly(FIELDS_SENT, st.tuples(NAMES_SENT, VALUES_SENT)), max_size=3))
    framing = draw(mostly(st.just(()), FRAMINGS_SENT))
    chunks = draw(BODIES) if framing or not draw(st.integers(0, 5)) else []
    headers[draw(st.integers(0, len(headers))):0] = framing
    params = draw(mostly(st.just(()), st.lists(
        st.tuples(TEXT, st.one_of(TEXT, st.integers(), st.lists(TEXT, max_size=2))), max_size=2)))
    method = draw(mostly(some(b'GET', b'PUT', b'HEAD', b'any'), TOKENS))
    url = 'http://name.test' + draw(mostly(some('/', '/?a=%2f&b', '?#', '/\xe9'), TARGETS))
    return Request(method, url, tuple(params), tuple(headers), chunks, draw(some(b'HTTP/1.1',
                                                                                 b'HTTP/1.1',
                                                                                 b'HTTP/1.0')))


REQUESTS = requests_sent()


class Server:
    """A server that keeps what lowhaio sends, and answers."""

    def __init__(self):
        self.loop = asyncio.SelectorEventLoop()

    def sent(self, wanted):
        """All bytes that were sent, and the error of the request if there was one."""
        return self.loop.run_until_complete(self.exchange(wanted))

    async def exchange(self, wanted):
        ours, theirs = socket.socketpair()
        self.is_asked = False
        pieces = []

        async def get_connection(scheme, host, port):
            self.is_asked = True
            return theirs

        async def body():
            for chunk in wanted.chunks:
                yield chunk

        async def send():
            try:
                _, _, content = await request(
                    wanted.method, wanted.url, wanted.params, wanted.headers, body)
                await buffered(content)
            except HttpError as error:
                return error

        request, close = Pool(get_connection=get_connection, http_version=wanted.http_version)
        ours.setblocking(False)
        task = self.loop.create_task(send())
        with ours:
            for said in (b'HTTP/1.1 100 Continue\r\n\r\n', b'HTTP/1.1 204 No Content\r\n\r\n'):
                await turns(8)
                with contextlib.suppress(BlockingIOError, ConnectionResetError):
                    while pieces[-1:] != [b'']:
                        pieces.append(ours.recv(65536))
                with contextlib.suppress(BrokenPipeError):
                    if self.is_asked:
                        ours.send(said)
            error = await task
            await close()
        if not self.is_asked:
            theirs.close()
        return b''.join(pieces), error

    def close(self):
        self.loop.close()


def check_sent(server, wanted, seen):
    """Check that an accepted request is sent as one request, the one that was asked for."""
    sent, error = server.sent(wanted)
    head, _, content = sent.partition(b'\r\n\r\n')
    lengths = [int(value) for name, value in wanted.headers
               if name.lower() == b'content-length' and value.isdigit()]
    if isinstance(error, HttpConnectionError):
        seen['refused'] += 1
        check(not sent, f'{wanted} was refused, but {sent!r} was sent')
        return
    if error is not None:
        # This is found only while sending: the body yields something else than was declared.
        seen['refused while they were sent'] += 1
        whole = b''.join(wanted.chunks)
        check([len(whole)] != lengths, f'{wanted} raised {error!r}')
        if lengths:
            check(len(content) <= sum(lengths), f'{wanted} sent too much: {sent!r}')
        else:
            end = content.find(b'0\r\n\r\n')
            check(whole.startswith(content) and (end < 0 or end == len(content) - 5),
                  f'{wanted} sent too much: {sent!r}')
        return
    seen['accepted'] += 1
    check(not re.search(r'[\x00-\x1f\x7f-\x9f]', wanted.url), f'{wanted} has a control character')
    check(content == b''.join(wanted.chunks), f'{wanted} has the content {content!r}')
    line, *lines = head.split(b'\r\n')
    fields = list(wanted.headers)
    if not any(name.lower() == b'host' for name, _ in fields):
        fields.insert(0, (b'host', b'name.test'))
    check(lines == [name + b': ' + value for name, value in fields],
          f'{wanted} has the fields {lines!r}')
    method, target, version = line.split(b' ')
    check((method, version) == (wanted.method, wanted.http_version),
          f'{wanted} begins with {line!r}')
    check_target(wanted, target.decode('ascii'))
    check_by_h11(wanted, sent, fields, content)


def check_target(wanted, target):
    given_target = wanted.url.removeprefix('http://name.test').partition('#')[0]
    query = urllib.parse.urlencode(wanted.params, doseq=True)
    check(re.fullmatch(r"/([A-Za-z0-9\-._~!$&'()*+,;=:@/?]|%[0-9A-Fa-f]{2})*", target),
          f'{wanted} has the target {target!r}')
    if query:
        check(target.endswith(query), f'{wanted} has the target {target!r}')
        target = target.removesuffix(query)
        separator = '' if given_target.endswith(('?', '&')) and '?' in given_target else \
            '&' if '?' in given_target else '?'
        check(target.endswith(separator), f'{wanted} has the target {target!r}')
        target = target.removesuffix(separator)
    if not given_target.startswith('/'):
        given_target = '/' + given_target
    expected = given_target.encode()
    # The decoded target is the same, and legal characters have not been changed.
    check(urllib.parse.unquote_to_bytes(target) == urllib.parse.unquote_to_bytes(expected),
          f'{wanted} has the target {target!r}')
    check(re.sub(rb'%[0-9A-F]{2}', b'', target.encode()) == re.sub(
        rb"%[0-9A-F]{2}|[^A-Za-z0-9\-._~!$&'()*+,;=:@/?%]|%(?![0-9A-Fa-f]{2})", b'', expected),
        f'{wanted} has the target {target!r}')


def check_by_h11(wanted, sent, fields, content):
    codings = [value for name, value in fields if name.lower() == b'transfer-encoding']
    if codings and codings[0].strip(b' \t').lower() != b'chunked':
        return  # h11 does not know this
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=2 ** 24)
    connection.receive_data(sent)
    request = connection.next_event()
    # h11 removes the spaces around a value, and puts a coding into lower case.
    check([(name, value.lower() if name.lower() == b'transfer-encoding' else value)
           for name, value in request.headers.raw_items()]
          == [(name,
               value.lower() if name.lower() == b'transfer-encoding' else value.strip(b' \t'))
              for name, value in fields], f'{wanted} is {request!r}')
    body = b''
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        body += event.data
    if codings:
        content = b'hello' if content.startswith(b'5') else b''
    check(body == content, f'{wanted} has the body {body!r}')
    check(not connection.trailing_data[0], f'{wanted} is more than a request: {sent!r}')


# ---------------------------------------------------------------------------------- origins

HOSTS = st.one_of(
    some('name.test', 'NAME.Test', 'name.test.', 'name..test', '.name.test', '', '.', 'a_b', '-a-',
         '127.0.0.1', '127.0.0.1.', '127.1', '0x7f.1', '0177.0.0.1', '2130706433', '1.2.3.4.5',
         '127.0.0.01', '256.1.1.1', '[::1]', '[::1', '::1', '[::1].', '[::ffff:1.2.3.4]', '[v1.a]',
         '[fe80::1%25lo]', '[fe80::1%lo]', '[::1%25]', '[127.0.0.1]', 'b\xfccher.test',
         'xn--bcher-kva.test', 'xn--', 'xn--a.test', '\uff41.test', '\uff11\uff12\uff17.0.0.1',
         '\u0661.test', '1\u3002\u0662.3.4', 'a\u3002test', 'a\uff0etest', 'a\uff0ftest',
         'a\u2044test', 'a\uff20test', 'a\uff1a80', '\u2100.test', '\u212a.test', '\xdf.test',
         '\u1e9e.test', 'a\u200db.test', 'a\xadb.test', '\u200b', 'a\u0301', '\u0130.test',
         '\u05d0.test', '\u05d01.test', '%6eame.test', 'name%2etest', 'a%00.test', 'a b', 'a\tb',
         'a\0b', 'a\\b', '\\', 'user@name.test', 'user:pass@name.test', '@name.test',
         'name.test@', 'a;b', "a'b", 'a,b', 'a(b)', 'a*b', '*', 'a' * 63 + '.test',
         'a' * 64 + '.test', '\xfc' * 63, 'a.' * 126 + 'a', 'a.' * 127 + 'a', '\U0001f600.test',
         '\ud800.test'),
    st.text(st.characters(), max_size=4),
    st.text(some(*'ab.-_1\u3002\uff0e\xdf\u0301\u200d\uff21@:[]\\%/'), max_size=8))
PORTS = some('', '', '', ':', ':80', ':443', ':8080', ':0', ':00', ':080', ':65535', ':65536',
             ':+80', ':-1', ':\u0661', ':\uff18\uff10', ':8_0', ': 80', ':80 ', ':a', ':1e2',
             ':' + '9' * 30)
SCHEMES = some('http://', 'http://', 'https://', 'HTTP://', 'hTTps://', 'http:/', 'http:',
               'http:///', '//', '', ' http://', 'http:\\\\', 'http://\\', 'ftp://',
               'http\u017f://', 'h\u1d57tp://')
AFTER = some('', '/', '/path', '?a', '#a', '\\@other.test/', '/@other.test', '#@other.test',
             '?@other.test', '@other.test', ';@other.test', '%2f@other.test', ':80@other.test',
             '\\.other.test', '\t', '\n', ' ', '\u3000', '/\\other.test')
URLS = st.builds(
    '{}{}{}{}'.format, mostly(some('http://', 'https://'), SCHEMES),
    st.one_of(some('name.test', 'b\xfccher.test', '127.0.0.1', '[::1]', 'N\uff41me.test.'), HOSTS),
    mostly(some('', ':80', ':8080'), PORTS), mostly(some('', '/', '/@other.test'), AFTER))


class Connected(socket.socket):
    """A socket that notes what it is told to connect to."""

    def connect(self, address):
        self.told.append(address)


class Unencrypted(ssl.SSLSocket):
    """A TLS socket without the cost of a handshake."""

    session = None
    session_reused = False
    version = cipher = getpeercert = lambda *_, **__: None
    recv = socket.socket.recv
    send = socket.socket.send

    def __init__(self, sock):
        socket.socket.__init__(self, fileno=sock.detach())

    def do_handshake(self):
        pass

    def selected_alpn_protocol(self):
        return None

    def unwrap(self):
        pass


class Origins:
    """Resolves any name, connects anywhere and answers, and notes where a request goes."""

    def __init__(self):
        self.loop = asyncio.SelectorEventLoop()

    def ask(self, *urls):
        """Make a request to each of the URLs. Returns the error of the last one, or None."""
        return self.loop.run_until_complete(self.exchange(urls))

    async def exchange(self, urls):
        self.names, self.addresses, self.tls_names, self.hosts = [], [], [], []
        ends = []

        def get_dns_resolver(get_logger_adapter):
            async def resolve(name, record_type, get_logger_adapter):
                self.names.append(name)
                return (IPv4AddressExpiresAt('192.0.2.1', expires_at=self.loop.time() + 60),)

            async def clear_cache(get_logger_adapter):
                pass

            return resolve, clear_cache

        def get_sock(family):
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            ends.append(ours)
            sock = Connected(fileno=theirs.detach())
            sock.told = self.addresses
            return sock

        class Context:
            @staticmethod
            def wrap_socket(sock, server_hostname, **options):
                self.tls_names.append(server_hostname)
                return Unencrypted(sock)

        async def answer():
            heard = b''
            while True:
                await asyncio.sleep(0)
                for end in ends:
                    with contextlib.suppress(BlockingIOError):
                        heard += end.recv(2 ** 20)
                    if heard.endswith(b'\r\n\r\n'):
                        self.hosts.append(re.search(rb'\r\nhost: (.*)\r\n', heard)[1].decode())
                        end.send(b'HTTP/1.1 204 No Content\r\n\r\n')
                        heard = b''

        request, close = Pool(get_dns_resolver=get_dns_resolver, get_sock=get_sock,
                              get_ssl_context=Context)
        answering = self.loop.create_task(answer())
        error = None
        try:
            for url in urls:
                _, _, body = await request(b'GET', url)
                await buffered(body)
        except HttpError as raised:
            error = raised
        answering.cancel()
        await close()
        await turns(2)
        for end in ends:
            end.close()
        return error

    def close(self):
        self.loop.close()


def check_origin(origins, url, seen):
    """Check that a request goes to the same host at every step, or to none at all."""
    error = origins.ask(url)
    told = f'{origins.names} {origins.addresses} {origins.hosts} {origins.tls_names}'
    if error is not None:
        seen['URLs refused'] += 1
        check(isinstance(error, HttpConnectionError) and told == '[] [] [] []',
              f'{url!r} is refused with {error!r}, but went to {told}')
        return
    seen['URLs accepted'] += 1
    check(not re.search(r'[\x00-\x1f\x7f-\x9f]', url), f'{url!r} has a control character')
    (field,), ((address, port, *_),) = origins.hosts, origins.addresses
    bracketed, digits = re.fullmatch(r'(\[.*\]|[^:]*)(?::([1-9][0-9]*))?', field).groups()
    host = bracketed.strip('[]')
    scheme, default = ('https', 443) if origins.tls_names else ('http', 80)
    check(port == int(digits or default) and digits != str(default)
          and origins.tls_names in ([], [host])
          and (origins.names == [host] and address == '192.0.2.1'
               or not origins.names and address == host), f'{url!r} goes to {told}')
    check_by_urllib(url, scheme, host, port)
    # Both URLs use the same connection, so they have the same key.
    urls = [url, url]
    if '%' not in url:
        urls += [f'{scheme}://{bracketed}:{port}/',
                 f'{scheme.upper()}://{bracketed.upper()}:{port}']
    check(origins.ask(*urls) is None and len(origins.addresses) == 1
          and origins.hosts == [field] * len(urls),
          f'requests to {urls} go to {origins.addresses} {origins.hosts}')


# The characters among the tried hosts that IDNA 2003 replaces by others.
DEVIATION = re.compile('[\xdf\u1e9e\u03c2\u200c\u200d]')


def check_by_urllib(url, scheme, host, port):
    parts = urllib.parse.urlsplit(url)
    name = parts.hostname
    if ':' in name:
        name = str(ipaddress.ip_address(name.partition('%')[0]))
    elif DEVIATION.search(name):
        # No label of the tried hosts has one of these beside something that IDNA 2008 forbids.
        name = idna.encode(name, uts46=True).decode() if '_' not in name else host
    elif not name.isascii():
        name = name.encode('idna').decode()
    check((parts.scheme, name.removesuffix('.').lower(), parts.port or port)
          == (scheme, host, port) and parts.username is None,
          f'{url!r} goes to {scheme} {host} {port}, but urllib has {parts}')


GROWING_URLS = {
    'scheme': lambda n: 'a' * n + '://b/',
    'no scheme': lambda n: 'a' * n,
    'label': lambda n: f'http://{"a" * n}/',
    'labels': lambda n: f'http://{"a." * (n // 2)}/',
    'label that is not ASCII': lambda n: f'http://{chr(0xfc) * n}/',
    'labels that are not ASCII': lambda n: f'http://{(chr(0xfc) + ".") * (n // 2)}/',
    'userinfo': lambda n: f'http://{"a" * n}@b/',
    'at signs': lambda n: f'http://{"@" * n}b/',
    'colons': lambda n: f'http://{":" * n}/',
    'brackets': lambda n: f'http://{"[" * n}/',
    'IPv6 address': lambda n: f'http://[{"1:" * (n // 2)}]/',
    'zone': lambda n: f'http://[fe80::1%25{"a" * n}]/',
    'port': lambda n: f'http://a:{"1" * n}/',
    'zeros of a port': lambda n: f'http://a:{"0" * n}80/',
    'slashes': lambda n: f'http://a{"/" * n}',
    'path that is not ASCII': lambda n: f'http://a/{chr(0xfc) * n}',
    'percent signs': lambda n: f'http://a/{"%" * n}',
    'percent signs with digits': lambda n: f'http://a/{"%2f" * (n // 3)} ',
    'letters, then a space': lambda n: f'http://a/{"a" * n} ',
    'question marks': lambda n: f'http://a/{"?" * n}',
    'fragment': lambda n: f'http://a/#{"#" * n}',
}
