"""What comes over the wire, as a table.

A row has the bytes that the server sends as answer to one request, and what the client is to make
of them. How the bytes are cut on their way is no part of it, since the outcome must not depend on
that.
"""

import asyncio
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
    MAY_BE_TLS,
    NO_CONTENT,
    OK,
    OLD,
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
    with_length,
)


def with_much_framing(length: int) -> bytes:
    """66 chunks of one byte, with so many bytes in the lines of their sizes."""
    first = b'1;' + b'a' * 1004 + b'\r\nx'
    other = b'\r\n1;' + b'a' * 1002 + b'\r\nx'
    last = b'\r\n0;' + b'a' * (length - 66 * 1008 - 6) + b'\r\n\r\n'
    return chunked(first + 65 * other + last)


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


def bad_status(raw, came, **row):
    return bad(raw, 'reading the response head: bad status line: expected HTTP/1.x, '
               f'a space, three digits and a reason, got {came}', **row)


def bad_line(raw, came, *, phase='head', **row):
    return bad(raw, f'reading the response {phase}: bad field line: expected a token, ":" and '
               f'a value, got {came}', **row)


def bad_length(value, came):
    return bad(head(b'content-length: ' + value) + b'ok', 'reading the response head: '
               f'bad content-length: expected 1 to 20 digits, got {came}')


def bad_coding(came, *lines):
    return bad(head(*lines) + b'2\r\nok\r\n0\r\n\r\n',
               f'reading the response head: bad transfer-encoding: expected chunked, got {came}')


def bad_size(body, came, after_chunk=False):
    return bad(chunked(body), 'reading the response body: bad chunk-size line: expected '
               f'{"CRLF after the chunk, " if after_chunk else ""}1 to 16 hex digits, an '
               f'optional extension and CRLF, got {came}')


def ended(raw, text, **row):
    return bad(raw, f'reading the response {text}', error=HttpConnectionClosedError,
               cause=EOFError, ends=True, **row)


NOT_MODIFIED = b'HTTP/1.1 304 Not Modified'

STATUS_LINE_ROWS = {
    'status line': good(with_length()),
    'status line of HTTP/1.0': good(with_length(start=OLD), kept=False),
    'status line with an empty reason': good(with_length(start=b'HTTP/1.1 200 ')),
    'status line without a reason': good(with_length(start=b'HTTP/1.1 200')),
    'status line with a long reason': good(with_length(start=b'HTTP/1.1 200 ' + b'so ' * 99)),
    'status line with a reason of HTAB and obs-text': good(
        with_length(start=b'HTTP/1.1 200 D\xe9j\xe0\tvu: 1')),
    'status line with a code that nobody knows': good(
        with_length(start=b'HTTP/1.1 799 Hm'), code=b'799'),
    'status line with the lowest code': good(with_length(start=b'HTTP/1.1 000 Zero'), code=b'000'),
    'status line with the highest code': good(with_length(start=b'HTTP/1.1 999 Top'), code=b'999'),
    'status line of an error': good(
        with_length(start=b'HTTP/1.1 503 Service Unavailable'), code=b'503'),
    'status line in lower case': bad_status(with_length(start=b'http/1.1 200 OK'),
                                            r"b'http/1.1 200 OK\r'"),
    'status line of HTTP/1.2': good(with_length(start=b'HTTP/1.2 200 OK')),
    'status line of HTTP/1.9': good(with_length(start=b'HTTP/1.9 200 OK')),
    'status line of HTTP/2.0': bad_status(with_length(start=b'HTTP/2.0 200 OK'),
                                          r"b'HTTP/2.0 200 OK\r'"),
    'status line of HTTP/2': bad_status(with_length(start=b'HTTP/2 200'), r"b'HTTP/2 200\r'"),
    'status line of HTTP/0.9': bad_status(with_length(start=b'HTTP/0.9 200 OK'),
                                          r"b'HTTP/0.9 200 OK\r'"),
    'status line of HTTP/1,1': bad_status(with_length(start=b'HTTP/1,1 200 OK'),
                                          r"b'HTTP/1,1 200 OK\r'"),
    'status line of HTTP/1.10': bad_status(with_length(start=b'HTTP/1.10 200 OK'),
                                           r"b'HTTP/1.10 200 OK\r'"),
    'status line of HTTP/01.1': bad_status(with_length(start=b'HTTP/01.1 200 OK'),
                                           r"b'HTTP/01.1 200 OK\r'"),
    'status line of HTTP/1': bad_status(with_length(start=b'HTTP/1 200 OK'),
                                        r"b'HTTP/1 200 OK\r'"),
    'status line of another protocol': bad_status(b'ICY 200 OK\r\n\r\n', r"b'ICY 200 OK\r'"),
    'status line with two spaces': bad_status(with_length(start=b'HTTP/1.1  200 OK'),
                                              r"b'HTTP/1.1  200 OK\r'"),
    'status line with a tab': bad_status(with_length(start=b'HTTP/1.1\t200 OK'),
                                         r"b'HTTP/1.1\t200 OK\r'"),
    'status line with a tab before the reason': bad_status(
        with_length(start=b'HTTP/1.1 200\tOK'), r"b'HTTP/1.1 200\tOK\r'"),
    'status line with two digits': bad_status(with_length(start=b'HTTP/1.1 20 OK'),
                                              r"b'HTTP/1.1 20 OK\r'"),
    'status line with four digits': bad_status(with_length(start=b'HTTP/1.1 2000 OK'),
                                               r"b'HTTP/1.1 2000 OK\r'"),
    'status line with a sign': bad_status(with_length(start=b'HTTP/1.1 +20 OK'),
                                          r"b'HTTP/1.1 +20 OK\r'"),
    'status line with a letter in its code': bad_status(with_length(start=b'HTTP/1.1 2x0 OK'),
                                                        r"b'HTTP/1.1 2x0 OK\r'"),
    'status line with digits that are not ASCII': bad_status(
        with_length(start=b'HTTP/1.1 20\xb2 OK'), r"b'HTTP/1.1 20\xb2 OK\r'"),
    'status line with no space after the code': bad_status(
        with_length(start=b'HTTP/1.1 200OK'), r"b'HTTP/1.1 200OK\r'"),
    'status line after a space': bad_status(with_length(start=b' HTTP/1.1 200 OK'),
                                            r"b' HTTP/1.1 200 OK\r'"),
    'status line after an empty line': bad_status(b'\r\n' + with_length(), r"b'\r'"),
    'status line after an empty line of LF': bad_status(b'\n' + with_length(), "b''"),
    'status line with NUL': bad_status(with_length(start=b'HTTP/1.1 200 O\x00K'),
                                       r"b'HTTP/1.1 200 O\x00K\r'"),
    'status line with a bare CR': bad_status(with_length(start=b'HTTP/1.1 200 O\rK'),
                                             r"b'HTTP/1.1 200 O\rK\r'"),
    'status line with two CR': bad_status(with_length(start=b'HTTP/1.1 200 OK\r'),
                                          r"b'HTTP/1.1 200 OK\r\r'"),
    'status line cut short in the message': bad_status(
        b'<html>' + b'.' * 100 + b'\n\n', f"b'<html>{54 * '.'}'..."),
    # It is judged once it is there, whatever may follow.
    'status line that is bad, and nothing after it': bad_status(b'hello\n', "b'hello'"),
    'status line is missing': bad_status(b'a: b\r\n\r\n', r"b'a: b\r'"),
    'nothing at all': ended(b'', f'head: {CLOSED}, after no byte of it{MAY_BE_TLS}',
                            started=False),
    'end in the status line': ended(b'HTTP/1.1 2', f"head: {CLOSED}, after b'HTTP/1.1 2'"),
    'end after the status line': ended(
        b'HTTP/1.1 200 OK\r\n', rf"head: {CLOSED}, after b'HTTP/1.1 200 OK\r\n'"),
    'end in the fields': ended(
        with_length(b'x: ' + 80 * b'y')[:-8],
        rf"head: {CLOSED}, after b'HTTP/1.1 200 OK\r\nx: {40 * 'y'}'..."),
}

FIELDS_ROWS = {
    'line ends of LF': good(b'HTTP/1.1 200 OK\nA: b\ncontent-length: 2\n\nok',
                            fields=((b'a', b'b'), (b'content-length', b'2'))),
    'line ends of both kinds': good(b'HTTP/1.1 200 OK\nA: b\r\ncontent-length: 2\n\r\nok',
                                    fields=((b'a', b'b'), (b'content-length', b'2'))),
    'line ends of CRLF, empty line of LF': good(
        b'HTTP/1.1 200 OK\r\nA: b\r\ncontent-length: 2\r\n\nok',
        fields=((b'a', b'b'), (b'content-length', b'2'))),
    'line end of the status line of LF': good(b'HTTP/1.1 200 OK\ncontent-length: 2\r\n\r\nok'),
    # The body starts right after the empty line, even if with what might be one more.
    'line ends at the start of the body': good(
        b'HTTP/1.1 200 OK\ncontent-length: 3\n\n\r\n\n', b'\r\n\n'),
    'bare CR in a value': bad_line(with_length(b'a: b\rc'), r"b'a: b\rc\r'"),
    'bare CR between fields': bad_line(with_length(b'a: b\rc: d'), r"b'a: b\rc: d\r'"),
    'bare CR at the end of a value': bad_line(with_length(b'a: b\r'), r"b'a: b\r\r'"),
    'bare CR as the whole value': bad_line(with_length(b'a:\r'), r"b'a:\r\r'"),
    'bare CR before the empty line': bad_line(
        b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\r\n\r\nok', r"b'\r\r'"),
    'NUL in a value': bad_line(with_length(b'a: b\x00c'), r"b'a: b\x00c\r'"),
    'NUL in a name': bad_line(with_length(b'a\x00b: c'), r"b'a\x00b: c\r'"),
    'NUL as a value': bad_line(with_length(b'a: \x00'), r"b'a: \x00\r'"),
    'no field': good(head(start=NO_CONTENT), b'', code=b'204', fields=()),
    'fields in order, with duplicates, in lower case': good(
        with_length(b'X-B: 1', b'x-a: 2', b'X-b: 3', b'X-A: 2'),
        fields=((b'x-b', b'1'), (b'x-a', b'2'), (b'x-b', b'3'), (b'x-a', b'2'),
                (b'content-length', b'2'))),
    'field with no whitespace': good(with_length(b'a:b'),
                                     fields=((b'a', b'b'), (b'content-length', b'2'))),
    'field with whitespace around its value': good(
        with_length(b'a: \t b \t c\t \t'),
        fields=((b'a', b'b \t c'), (b'content-length', b'2'))),
    'field with an empty value': good(
        with_length(b'a:', b'b: \t '),
        fields=((b'a', b''), (b'b', b''), (b'content-length', b'2'))),
    'field with colons in its value': good(
        with_length(b'a: :b::c'), fields=((b'a', b':b::c'), (b'content-length', b'2'))),
    'field with every character of a token': good(
        with_length(b"!#$%&'*+-.^_`|~09AZaz: b"),
        fields=((b"!#$%&'*+-.^_`|~09azaz", b'b'), (b'content-length', b'2'))),
    'field with obs-text': good(
        with_length(b'a: \xc3\xa9\xff\x80'),
        fields=((b'a', b'\xc3\xa9\xff\x80'), (b'content-length', b'2'))),
    'field with other control characters': good(
        with_length(b'a: \x01\x0b\x0c\x1f\x7f\x85'),
        fields=((b'a', b'\x01\x0b\x0c\x1f\x7f\x85'), (b'content-length', b'2'))),
    'field with a long value': good(
        with_length(b'a: ' + b'b ' * 200 + b'c'),
        fields=((b'a', b'b ' * 200 + b'c'), (b'content-length', b'2'))),
    'many fields': good(with_length(*[b'a: %d' % i for i in range(50)]), fields=(
        *[(b'a', b'%d' % i) for i in range(50)], (b'content-length', b'2'))),
    'space before the colon': bad_line(with_length(b'a : b'), r"b'a : b\r'"),
    'tab before the colon': bad_line(with_length(b'a\t: b'), r"b'a\t: b\r'"),
    'space before the colon of a framing field': bad_line(
        head(b'content-length: 2', b'transfer-encoding : chunked') + b'ok',
        r"b'transfer-encoding : chunked\r'"),
    'no colon': bad_line(with_length(b'a b'), r"b'a b\r'"),
    'no name': bad_line(with_length(b': b'), r"b': b\r'"),
    'a colon only': bad_line(with_length(b':'), r"b':\r'"),
    'space in a name': bad_line(with_length(b'a b: c'), r"b'a b: c\r'"),
    'separator in a name': bad_line(with_length(b'a(b): c'), r"b'a(b): c\r'"),
    'quotes around a name': bad_line(with_length(b'"a": b'), "b'\"a\": b\\r'"),
    'obs-text in a name': bad_line(with_length(b'\xe9: b'), r"b'\xe9: b\r'"),
    'a second status line': bad_line(with_length(b'HTTP/1.1 200 OK'), r"b'HTTP/1.1 200 OK\r'"),
    'bad last field': bad_line(head(b'content-length: 2', b'b') + b'ok', r"b'b\r'"),
    'bad field cut short in the message': bad_line(
        with_length(b'x' * 70), f"b'{60 * 'x'}'..."),
    'obs-fold with a space': good(with_length(b'a: b\r\n c'),
                                  fields=((b'a', b'b c'), (b'content-length', b'2'))),
    'obs-fold with a tab': good(with_length(b'a: b\r\n\tc'),
                                fields=((b'a', b'b c'), (b'content-length', b'2'))),
    'obs-fold after LF': good(with_length(b'a: b\n c'),
                              fields=((b'a', b'b c'), (b'content-length', b'2'))),
    'obs-fold with whitespace on both sides': good(
        with_length(b'a: b \t\r\n\t  c'), fields=((b'a', b'b c'), (b'content-length', b'2'))),
    'obs-fold over several lines': good(
        with_length(b'a: b\r\n c\r\n\td', b'e: f\r\n g'),
        fields=((b'a', b'b c d'), (b'e', b'f g'), (b'content-length', b'2'))),
    'obs-fold before the value': good(with_length(b'a:\r\n b'),
                                      fields=((b'a', b'b'), (b'content-length', b'2'))),
    'obs-fold with nothing but whitespace': good(
        with_length(b'a: b\r\n \t \r\n c'), fields=((b'a', b'b c'), (b'content-length', b'2'))),
    'obs-fold after the value': good(
        with_length(b'a: b\r\n \t'), fields=((b'a', b'b'), (b'content-length', b'2'))),
    'obs-fold of what looks like a field': good(
        with_length(b'a: b\r\n content-length: 9'),
        fields=((b'a', b'b content-length: 9'), (b'content-length', b'2'))),
    'obs-fold in the last field': good(
        head(b'content-length: 2', b'a: b\r\n c') + b'ok',
        fields=((b'content-length', b'2'), (b'a', b'b c'))),
    'obs-fold of a length': good(head(b'content-length:\r\n 2') + b'ok'),
    'obs-fold of a coding': good(
        head(b'transfer-encoding:\r\n chunked') + b'2\r\nok\r\n0\r\n\r\n'),
    'obs-fold inside a length': bad(
        head(b'content-length: 1\r\n 0') + b'0123456789',
        "reading the response head: bad content-length: expected 1 to 20 digits, got b'1 0'"),
    'obs-fold in the first line': bad_line(with_length(b' a: b'), r"b' a: b\r'"),
    'obs-fold of nothing in the first line': bad_line(with_length(b' '), r"b' \r'"),
    'obs-fold inside a name': bad_line(with_length(b'a\r\n : b'), r"b'a : b\r'"),
    'obs-fold of a name': bad_line(with_length(b'a\r\n b: c'), r"b'a b: c\r'"),
    'obs-fold with NUL': bad_line(with_length(b'a: b\r\n \x00'), r"b'a: b \x00\r'"),
}

INTERIM_ROWS = {
    'interim response': good(CONTINUE + with_length()),
    'interim response with fields': good(
        head(b'Link: </a>', b'content-length: 9', start=b'HTTP/1.1 103 Early Hints')
        + with_length(), fields=((b'content-length', b'2'),)),
    'interim response with LF': good(b'HTTP/1.1 102 P\n\n' + with_length()),
    'interim response that nobody knows': good(head(start=b'HTTP/1.1 199 Hm') + with_length()),
    'interim response of HTTP/1.0': good(head(start=b'HTTP/1.0 100 C') + with_length()),
    'interim response with connection: close': good(
        head(b'connection: close', start=b'HTTP/1.1 103 Early Hints') + with_length()),
    'interim response that says chunked': good(
        head(b'transfer-encoding: chunked', start=b'HTTP/1.1 103 E') + with_length()),
    'interim response before one without a body': good(
        CONTINUE + head(start=NO_CONTENT), b'', code=b'204'),
    'interim response before chunks': good(CONTINUE + chunked(b'2\r\nok\r\n0\r\n\r\n')),
    'interim responses, 100 of them': good(100 * CONTINUE + with_length()),
    'interim responses, 101 of them': bad(
        101 * CONTINUE + with_length(),
        'reading the response head: got more than 100 interim responses'),
    'interim response with a bad field': bad_line(
        head(b'a', start=b'HTTP/1.1 103 E') + with_length(), r"b'a\r'"),
    'interim response, then none': bad_status(CONTINUE + b'hello\r\n\r\n', r"b'hello\r'"),
    'interim response, then the end': ended(CONTINUE, f'head: {CLOSED}, after no byte of it'),
    'interim response, then the end in the next': ended(
        CONTINUE + b'HTTP', f"head: {CLOSED}, after b'HTTP'"),
    'switching protocols': good(
        head(b'upgrade: chat', b'connection: upgrade', start=SWITCHING) + b'\x00anything\r\n',
        b'\x00anything\r\n', code=b'101', kept=False, ends=True, sent=UPGRADE,
        fields=((b'upgrade', b'chat'), (b'connection', b'upgrade'))),
    'switching protocols, no byte': good(
        head(start=SWITCHING), b'', code=b'101', kept=False, ends=True, sent=UPGRADE),
    'switching protocols, with a length': good(
        head(b'content-length: 2', start=SWITCHING) + b'all of it', b'all of it', code=b'101',
        kept=False, ends=True, sent=UPGRADE),
    'switching protocols, said to be chunked': good(
        head(b'transfer-encoding: chunked', start=SWITCHING) + b'2\r\nok', b'2\r\nok',
        code=b'101', kept=False, ends=True, sent=UPGRADE),
    'switching protocols after an interim response': good(
        CONTINUE + head(start=SWITCHING) + b'all', b'all', code=b'101', kept=False, ends=True,
        sent=UPGRADE),
    'switching protocols, of HEAD': good(
        head(start=SWITCHING) + b'all', b'all', code=b'101', kept=False, ends=True, sent=UPGRADE,
        method=b'HEAD'),
    'switching protocols, of HEAD, no byte': good(
        head(start=SWITCHING), b'', code=b'101', kept=False, ends=True, sent=UPGRADE,
        method=b'HEAD'),
    'switching protocols, of HTTP/1.2': good(
        head(start=b'HTTP/1.2 101 Switching Protocols') + b'all', b'all', code=b'101', kept=False,
        ends=True, sent=UPGRADE),
    'switching protocols declined': good(with_length(), sent=UPGRADE),
    'switching protocols unasked': bad(
        head(start=SWITCHING) + with_length(), 'reading the response head: got 101 Switching '
        'Protocols, but the request had no upgrade'),
    'switching protocols unasked, of HEAD': bad(
        head(start=SWITCHING), 'reading the response head: got 101 Switching Protocols, but the '
        'request had no upgrade', method=b'HEAD'),
    'switching protocols unasked, with connection: upgrade only': bad(
        head(start=SWITCHING) + with_length(), 'reading the response head: got 101 Switching '
        'Protocols, but the request had no upgrade', sent=((b'connection', b'upgrade'),)),
}

NO_BODY_ROWS = {
    'HEAD with a length': good(head(b'content-length: 5'), b'', method=b'HEAD',
                               fields=((b'content-length', b'5'),)),
    'HEAD with a coding': good(head(b'transfer-encoding: chunked'), b'', method=b'HEAD'),
    'HEAD with neither': good(head(), b'', method=b'HEAD'),
    'HEAD of an error': good(
        head(b'content-length: 5', start=b'HTTP/1.1 404 Not Found'), b'', code=b'404',
        method=b'HEAD'),
    'HEAD of HTTP/1.0': good(head(b'content-length: 5', start=OLD), b'', method=b'HEAD',
                             kept=False),
    'HEAD with connection: close': good(head(b'connection: close'), b'', method=b'HEAD',
                                        kept=False),
    'HEAD with a bad length': bad(
        head(b'content-length: 5x'),
        "reading the response head: bad content-length: expected 1 to 20 digits, got b'5x'",
        method=b'HEAD'),
    'HEAD with a length and a coding': good(
        head(b'content-length: 2', b'transfer-encoding: chunked'), b'', method=b'HEAD',
        kept=False),
    'HEAD of HTTP/1.0 with a coding and keep-alive': good(
        head(b'transfer-encoding: chunked', b'connection: keep-alive', start=OLD), b'',
        method=b'HEAD', kept=False),
    'HEAD after an interim response': good(
        CONTINUE + head(b'content-length: 5'), b'', method=b'HEAD'),
    '204': good(head(start=NO_CONTENT), b'', code=b'204'),
    # Some servers send what they declare.
    '204 with a length': good(
        head(b'content-length: 5', start=NO_CONTENT), b'', code=b'204', kept=False),
    '204 with a length of 0': good(
        head(b'content-length: 0', start=NO_CONTENT), b'', code=b'204'),
    '204 with a coding': good(chunked(b'', start=NO_CONTENT), b'', code=b'204', kept=False),
    '204 with a coding, of HEAD': good(
        chunked(b'', start=NO_CONTENT), b'', code=b'204', method=b'HEAD', kept=False),
    '204 with a coding of identity': good(
        head(b'transfer-encoding: identity', start=NO_CONTENT), b'', code=b'204'),
    '204 with an unknown coding': good(
        head(b'transfer-encoding: gzip', start=NO_CONTENT), b'', code=b'204', kept=False),
    '204 with a length and keep-alive': good(
        head(b'content-length: 5', b'connection: keep-alive', start=NO_CONTENT), b'', code=b'204',
        kept=False),
    '204 with connection: close': good(
        head(b'connection: close', start=NO_CONTENT), b'', code=b'204', kept=False),
    '304': good(head(start=NOT_MODIFIED), b'', code=b'304'),
    '304 with a length': good(head(b'content-length: 5', start=NOT_MODIFIED), b'', code=b'304'),
    '304 with a length and a coding': good(
        chunked(b'', b'content-length: 5', start=NOT_MODIFIED), b'', code=b'304', kept=False),
    '304 with a coding': good(chunked(b'', start=NOT_MODIFIED), b'', code=b'304'),
    # RFC 9110 15.3.6 says that it has none, but RFC 9112 6.3 frames it like any other.
    '205 with a body': good(with_length(start=b'HTTP/1.1 205 Reset Content'), code=b'205'),
}

CODING_ROWS = {
    'coding of chunked': good(chunked(b'2\r\nok\r\n0\r\n\r\n')),
    'coding of chunked in any case': good(
        head(b'Transfer-Encoding: ChunKed') + b'2\r\nok\r\n0\r\n\r\n'),
    'coding of chunked with whitespace': good(
        head(b'transfer-encoding: \tchunked \t') + b'2\r\nok\r\n0\r\n\r\n'),
    'coding of identity, with a length': good(with_length(b'transfer-encoding: identity')),
    'coding of identity in any case, with a length': good(
        with_length(b'transfer-encoding: IDENTITY')),
    'coding of identity, with a length, on HTTP/1.0': good(
        with_length(b'transfer-encoding: identity', b'connection: keep-alive', start=OLD)),
    'HEAD with a coding of identity and a length': good(
        head(b'transfer-encoding: identity', b'content-length: 2'), b'', method=b'HEAD'),
    'coding of identity, without a length': good(
        head(b'transfer-encoding: identity') + b'ok', kept=False, ends=True),
    'coding and then a length': good(
        chunked(b'2\r\nok\r\n0\r\n\r\n', b'content-length: 5'), kept=False),
    'coding after a length': good(
        head(b'content-length: 2', b'transfer-encoding: chunked') + b'2\r\nok\r\n0\r\n\r\n',
        kept=False),
    'coding and a length of 0': good(
        chunked(b'2\r\nok\r\n0\r\n\r\n', b'content-length: 0'), kept=False),
    'coding and a length, and keep-alive': good(
        chunked(b'2\r\nok\r\n0\r\n\r\n', b'content-length: 2', b'connection: keep-alive'),
        kept=False),
    'coding on HTTP/1.0': good(chunked(b'2\r\nok\r\n0\r\n\r\n', start=OLD), kept=False),
    'coding on HTTP/1.0 with keep-alive': good(
        chunked(b'2\r\nok\r\n0\r\n\r\n', b'connection: keep-alive', start=OLD), kept=False),
    'coding and a bad length': bad(
        chunked(b'2\r\nok\r\n0\r\n\r\n', b'content-length: x'),
        "reading the response head: bad content-length: expected 1 to 20 digits, got b'x'"),
    'coding of gzip': bad_coding("b'gzip'", b'transfer-encoding: gzip'),
    'coding of gzip, with a length': bad_coding(
        "b'gzip'", b'transfer-encoding: gzip', b'content-length: 2'),
    'coding of gzip, chunked': bad_coding("b'gzip, chunked'", b'transfer-encoding: gzip, chunked'),
    'coding of gzip and of chunked': bad_coding(
        "b'gzip, chunked'", b'transfer-encoding: gzip', b'transfer-encoding: chunked'),
    'coding of chunked, gzip': bad_coding("b'chunked, gzip'", b'transfer-encoding: chunked, gzip'),
    'coding of chunked twice': bad_coding(
        "b'chunked, chunked'", b'transfer-encoding: chunked, chunked'),
    'coding of chunked in two fields': bad_coding(
        "b'chunked, chunked'", b'transfer-encoding: chunked', b'transfer-encoding: chunked'),
    'coding of chunked with a parameter': bad_coding(
        "b'chunked;a=b'", b'transfer-encoding: chunked;a=b'),
    'coding of chunked in quotes': bad_coding("b'\"chunked\"'", b'transfer-encoding: "chunked"'),
    'coding of chunked after a comma': good(
        head(b'transfer-encoding: , chunked') + b'2\r\nok\r\n0\r\n\r\n'),
    'coding of chunked before a comma': good(
        head(b'transfer-encoding: chunked,') + b'2\r\nok\r\n0\r\n\r\n'),
    'coding of chunked among commas and whitespace': good(
        head(b'transfer-encoding: ,\t, Chunked , ,') + b'2\r\nok\r\n0\r\n\r\n'),
    'coding of chunked beside an empty field': good(
        head(b'transfer-encoding:', b'transfer-encoding: chunked') + b'2\r\nok\r\n0\r\n\r\n'),
    'coding of identity before a comma': good(with_length(b'transfer-encoding: identity,')),
    'coding of nothing': bad_coding("b''", b'transfer-encoding:'),
    'coding of commas only': bad_coding("b''", b'transfer-encoding: ,,'),
    'coding of nothing, with a length': bad_coding(
        "b''", b'transfer-encoding:', b'content-length: 2'),
    'coding of chunked, identity': bad_coding(
        "b'chunked, identity'", b'transfer-encoding: chunked, identity'),
    'coding of chunked and of identity': bad_coding(
        "b'chunked, identity'", b'transfer-encoding: chunked', b'transfer-encoding: identity'),
    'coding of identity and of chunked': bad_coding(
        "b'identity, chunked'", b'transfer-encoding: identity', b'transfer-encoding: chunked'),
    'coding of identity twice': bad_coding(
        "b'identity, identity'", b'transfer-encoding: identity', b'transfer-encoding: identity'),
    'coding of identity with a parameter': bad_coding(
        "b'identity;a=b'", b'transfer-encoding: identity;a=b', b'content-length: 2'),
    'coding of chunked after a vertical tab': bad_coding(
        r"b'\x0bchunked'", b'transfer-encoding: \x0bchunked'),
    'coding of xchunked': bad_coding("b'xchunked'", b'transfer-encoding: xchunked'),
    'coding cut short in the message': bad_coding(
        f"b'{60 * 'x'}'...", b'transfer-encoding: ' + 61 * b'X'),
}

LENGTH_ROWS = {
    'length': good(with_length()),
    'length of 0': good(head(b'content-length: 0'), b''),
    'length in capitals, with whitespace': good(head(b'CONTENT-LENGTH:\t2 \t') + b'ok'),
    'length with zeros before it': good(head(b'content-length: 0002') + b'ok'),
    'lengths that are equal': good(with_length(b'content-length: 2', b'content-length: 2')),
    'lengths that are different': bad(
        with_length(b'content-length: 3'),
        "reading the response head: bad content-length: expected one, got 3 and b'2'"),
    'lengths of which the last is different': bad(
        head(b'content-length: 2', b'content-length: 2', b'content-length: 02',
             b'content-length: 1') + b'ok',
        "reading the response head: bad content-length: expected one, got 2 and b'1'"),
    'lengths of which the second is bad': bad(
        head(b'content-length: 2', b'content-length: x') + b'ok',
        "reading the response head: bad content-length: expected 1 to 20 digits, got b'x'"),
    'length with a plus': bad_length(b'+2', "b'+2'"),
    'length with a minus': bad_length(b'-2', "b'-2'"),
    'length of minus zero': bad_length(b'-0', "b'-0'"),
    'length in hex': bad_length(b'0x2', "b'0x2'"),
    'length with an underscore': bad_length(b'0_2', "b'0_2'"),
    'length with a fraction': bad_length(b'2.0', "b'2.0'"),
    'length with an exponent': bad_length(b'2e0', "b'2e0'"),
    'length as a list': bad_length(b'2, 2', "b'2, 2'"),
    'length with a parameter': bad_length(b'2;a=b', "b'2;a=b'"),
    'length in quotes': bad_length(b'"2"', "b'\"2\"'"),
    'length with a space in it': bad_length(b'2 2', "b'2 2'"),
    'length after a vertical tab': bad_length(b'\x0b2', r"b'\x0b2'"),
    'length in digits that are not ASCII': bad_length('٢'.encode(), r"b'\xd9\xa2'"),
    'length in letters': bad_length(b'two', "b'two'"),
    'length that is empty': bad_length(b'', "b''"),
    'length cut short in the message': bad_length(61 * b'x', f"b'{60 * 'x'}'..."),
    'length that is not reached': ended(
        head(b'content-length: 5') + b'ok',
        f'body: {CLOSED}, 3 bytes before the end that content-length told'),
    'length that is not begun': ended(
        head(b'content-length: 5'),
        f'body: {CLOSED}, 5 bytes before the end that content-length told'),
    'length that nobody could send': ended(
        head(b'content-length: 99999999999999999999') + b'ok',
        f'body: {CLOSED}, 99999999999999999997 bytes before the end that content-length told'),
    'length of 20 digits': good(head(b'content-length: 00000000000000000002') + b'ok'),
    'length of 21 digits': bad_length(b'000000000000000000002', "b'000000000000000000002'"),
    'length of more digits than int() takes': bad_length(b'9' * 5000, f"b'{60 * '9'}'..."),
    'length not given': good(head() + b'ok', kept=False, ends=True),
    'length not given, and no byte': good(head(), b'', kept=False, ends=True),
    'length not given, with keep-alive': good(
        head(b'connection: keep-alive') + b'ok', kept=False, ends=True),
    'length not given, HTTP/1.0': good(head(start=OLD) + b'ok', kept=False, ends=True),
    'length not given, HTTP/1.0 with keep-alive': good(
        head(b'connection: keep-alive', start=OLD) + b'ok', kept=False, ends=True),
    'length not given, and what looks like a response': good(
        head() + OK, OK, kept=False, ends=True),
}

CHUNKS_ROWS = {
    'chunk': good(chunked(b'5\r\nhello\r\n0\r\n\r\n'), b'hello'),
    'chunks': good(chunked(b'5\r\nhello\r\n1\r\n \r\n5\r\nworld\r\n0\r\n\r\n'), b'hello world'),
    'chunks, none': good(chunked(b'0\r\n\r\n'), b''),
    'chunks of one byte': good(chunked(b'1\r\nx\r\n' * 100 + b'0\r\n\r\n'), b'x' * 100),
    'chunk with a size in lower case': good(chunked(b'a\r\n0123456789\r\n0\r\n\r\n'),
                                            b'0123456789'),
    'chunk with a size in upper case': good(chunked(b'B\r\n0123456789-\r\n0\r\n\r\n'),
                                            b'0123456789-'),
    'chunk with a size of two digits': good(
        chunked(b'1F\r\n' + 31 * b'x' + b'\r\n0\r\n\r\n'), 31 * b'x'),
    'chunk with zeros before its size': good(
        chunked(b'0000000000000002\r\nok\r\n0000000000000000\r\n\r\n')),
    'chunk that looks like framing': good(
        chunked(b'c\r\n\r\n0\r\n\r\nhello\r\n0\r\n\r\n'), b'\r\n0\r\n\r\nhello'),
    'chunk of line ends': good(
        chunked(b'4\r\n\r\n\r\n\r\n2\r\n\n\r\r\n0\r\n\r\n'), b'\r\n\r\n\n\r'),
    'chunk of every byte': good(
        chunked(b'100\r\n' + bytes(range(256)) + b'\r\n0\r\n\r\n'), bytes(range(256))),
    'chunk with an extension': good(chunked(b'2;a\r\nok\r\n0;b=c\r\n\r\n')),
    'chunk with extensions': good(chunked(b'2;a=b;c="d;e";f\r\nok\r\n0\r\n\r\n')),
    'chunk with whitespace before its extension': good(
        chunked(b'2 \t; a = b \r\nok\r\n0\r\n\r\n')),
    'chunk with a space after its size': good(chunked(b'2 \r\nok\r\n0 \r\n\r\n')),
    'chunk padded with spaces and tabs': good(
        chunked(b'2    \r\nok\r\n0 \t \r\na: b\r\n\r\n'), trailers=((b'a', b'b'),)),
    'chunk with an empty extension': good(chunked(b'2;\r\nok\r\n0;\r\n\r\n')),
    'chunk with obs-text in its extension': good(chunked(b'2;a="\xff\x01"\r\nok\r\n0\r\n\r\n')),
    'chunk with a long extension': good(
        chunked(b'2;' + 300 * b'a' + b'\r\nok\r\n0;' + 300 * b'b' + b'\r\n\r\n')),
    'trailers': good(
        chunked(b'2\r\nok\r\n0\r\nX-A: b\r\nx-c:d \r\n\r\n'),
        trailers=((b'x-a', b'b'), (b'x-c', b'd')),
        fields=((b'transfer-encoding', b'chunked'),)),
    'trailers after no chunk': good(chunked(b'0\r\na: b\r\n\r\n'), b'', trailers=((b'a', b'b'),)),
    'trailers with duplicates': good(
        chunked(b'0\r\na: b\r\nA: c\r\na: b\r\n\r\n'), b'',
        trailers=((b'a', b'b'), (b'a', b'c'), (b'a', b'b'))),
    'trailers with obs-fold': good(
        chunked(b'0\r\na: b\r\n c\r\n\td\r\n\r\n'), b'', trailers=((b'a', b'b c d'),)),
    'trailers with LF': good(chunked(b'0\r\na: b\nc: d\n\r\n'), b'',
                             trailers=((b'a', b'b'), (b'c', b'd'))),
    'trailers that would be framing': good(
        chunked(b'2\r\nok\r\n0\r\ncontent-length: 9\r\ntransfer-encoding: gzip\r\n\r\n'),
        trailers=((b'content-length', b'9'), (b'transfer-encoding', b'gzip'))),
    'trailers with a bad length': good(
        chunked(b'2\r\nok\r\n0\r\ncontent-length: x\r\n\r\n'),
        trailers=((b'content-length', b'x'),)),
    'trailers with connection: close': good(
        chunked(b'2\r\nok\r\n0\r\nconnection: close\r\nkeep-alive: timeout=0\r\n\r\n'),
        trailers=((b'connection', b'close'), (b'keep-alive', b'timeout=0'))),
    'trailers with connection: keep-alive': good(
        chunked(b'2\r\nok\r\n0\r\nconnection: keep-alive\r\n\r\n', b'connection: close'),
        trailers=((b'connection', b'keep-alive'),), kept=False),
    'trailers after a body with connection: close': good(
        chunked(b'2\r\nok\r\n0\r\na: b\r\n\r\n', b'connection: close'),
        trailers=((b'a', b'b'),), kept=False),
    'chunk with no size': bad_size(b'\r\nok\r\n0\r\n\r\n', r"b'\r\n'"),
    'chunk with an extension only': bad_size(b';a=2\r\nok\r\n0\r\n\r\n', r"b';a=2\r\n'"),
    'chunk with a size that is not hex': bad_size(b'g\r\nok\r\n0\r\n\r\n', r"b'g\r\n'"),
    'chunk with a size of 0x': bad_size(b'0x2\r\nok\r\n0\r\n\r\n', r"b'0x2\r\n'"),
    'chunk with a plus': bad_size(b'+2\r\nok\r\n0\r\n\r\n', r"b'+2\r\n'"),
    'chunk with a minus': bad_size(b'-2\r\nok\r\n0\r\n\r\n', r"b'-2\r\n'"),
    'chunk with an underscore': bad_size(b'0_2\r\nok\r\n0\r\n\r\n', r"b'0_2\r\n'"),
    'chunk after a space': bad_size(b' 2\r\nok\r\n0\r\n\r\n', r"b' 2\r\n'"),
    'chunk with 17 digits': bad_size(
        b'00000000000000002\r\nok\r\n0\r\n\r\n', r"b'00000000000000002\r\n'"),
    'chunk with a space and no extension': bad_size(
        b'2 a=b\r\nok\r\n0\r\n\r\n', r"b'2 a=b\r\n'"),
    'chunk with LF after its size': bad_size(b'2\nok\r\n0\r\n\r\n', r"b'2\n'"),
    'chunk with LF after its extension': bad_size(b'2;a\nok\r\n0\r\n\r\n', r"b'2;a\n'"),
    'chunk with CR after its size': bad_size(b'2\rok\r\n0\r\n\r\n', r"b'2\rok\r\n'"),
    'chunk with two CR after its size': bad_size(b'2\r\r\nok\r\n0\r\n\r\n', r"b'2\r\r\n'"),
    'chunk with whitespace and LF after its size': bad_size(
        b'2 \nok\r\n0\r\n\r\n', r"b'2 \n'"),
    'chunk with whitespace, CR and whitespace after its size': bad_size(
        b'2 \r \r\nok\r\n0\r\n\r\n', r"b'2 \r \r\n'"),
    'chunk with digits after whitespace': bad_size(b'2 2\r\nok\r\n0\r\n\r\n', r"b'2 2\r\n'"),
    'chunk with a vertical tab after its size': bad_size(
        b'2\x0b\r\nok\r\n0\r\n\r\n', r"b'2\x0b\r\n'"),
    'chunk with CR in its extension': bad_size(b'2;a\rb\r\nok\r\n0\r\n\r\n', r"b'2;a\rb\r\n'"),
    'chunk with NUL in its extension': bad_size(b'2;\x00\r\nok\r\n0\r\n\r\n', r"b'2;\x00\r\n'"),
    'chunk with NUL': bad_size(b'2\x00\r\nok\r\n0\r\n\r\n', r"b'2\x00\r\n'"),
    'chunk with a digit that is not ASCII': bad_size(
        '٢\r\nok\r\n0\r\n\r\n'.encode(), r"b'\xd9\xa2\r\n'"),
    'chunk cut short in the message': bad_size(
        b'z' * 70 + b'\r\nok\r\n0\r\n\r\n', f"b'{60 * 'z'}'..."),
    'chunk that is longer than its size': bad_size(
        b'2\r\nokay\r\n0\r\n\r\n', r"b'ay\r\n'", after_chunk=True),
    'chunk that is shorter than its size': bad_size(
        b'4\r\nok\r\n0\r\n\r\n', r"b'0\r\n'", after_chunk=True),
    'chunk with LF after its data': bad_size(
        b'2\r\nok\n0\r\n\r\n', r"b'\n'", after_chunk=True),
    'chunk with two CRLF after its data': bad_size(
        b'2\r\nok\r\n\r\n0\r\n\r\n', r"b'\r\n\r\n'", after_chunk=True),
    'chunk with CR after its data': bad_size(
        b'2\r\nok\r0\r\n\r\n', r"b'\r0\r\n'", after_chunk=True),
    'chunk of which the second has a bad size': bad_size(
        b'2\r\nok\r\nx\r\nok\r\n0\r\n\r\n', r"b'\r\nx\r\n'", after_chunk=True),
    'chunk that is last with LF': bad_size(
        b'2\r\nok\r\n0\n\r\n', r"b'\r\n0\n'", after_chunk=True),
    'trailers with no colon': bad_line(
        chunked(b'2\r\nok\r\n0\r\nab\r\n\r\n'), r"b'ab\r'", phase='body'),
    'trailers with a space before the colon': bad_line(
        chunked(b'0\r\na: b\r\nc : d\r\n\r\n'), r"b'c : d\r'", phase='body'),
    'trailers with NUL': bad_line(
        chunked(b'0\r\na: \x00\r\n\r\n'), r"b'a: \x00\r'", phase='body'),
    'trailers with a bare CR': bad_line(
        chunked(b'0\r\na: b\rc: d\r\n\r\n'), r"b'a: b\rc: d\r'", phase='body'),
    'trailers with obs-fold in the first line': bad_line(
        chunked(b'0\r\n a: b\r\n\r\n'), r"b' a: b\r'", phase='body'),
    'chunks that never come': ended(chunked(b''), f'body: {CLOSED} in a chunk-size line'),
    'chunks that end in a size': ended(chunked(b'5'), f'body: {CLOSED} in a chunk-size line'),
    'chunks that end after a size': ended(
        chunked(b'5\r\n'), f'body: {CLOSED} in a chunk, 5 bytes before its end'),
    'chunks that end in a chunk': ended(
        chunked(b'2\r\nok\r\n5\r\nhel'), f'body: {CLOSED} in a chunk, 2 bytes before its end'),
    'chunks that end in a chunk that nobody could send': ended(
        chunked(b'ffffffffffffffff\r\nok'),
        f'body: {CLOSED} in a chunk, {2 ** 64 - 3} bytes before its end'),
    'chunks that end after a chunk': ended(
        chunked(b'5\r\nhello'), f'body: {CLOSED} in a chunk-size line'),
    'chunks that end between chunks': ended(
        chunked(b'5\r\nhello\r\n'), f'body: {CLOSED} in a chunk-size line'),
    'chunks that end after the last size': ended(
        chunked(b'5\r\nhello\r\n0\r\n'), f'body: {CLOSED} in the trailer section'),
    'chunks that end in the last line end': ended(
        chunked(b'5\r\nhello\r\n0\r\n\r'), f'body: {CLOSED} in the trailer section'),
    'chunks that end in the trailer section': ended(
        chunked(b'5\r\nhello\r\n0\r\na: b\r\n'), f'body: {CLOSED} in the trailer section'),
    'framing just within proportion': good(with_much_framing(66592), b'x' * 66),
    'framing out of proportion': bad(
        with_much_framing(66593), 'reading the response body: the framing of the chunked body '
        'is out of proportion: 66593 bytes for 66 of content'),
    'framing out of proportion long before the end': bad(
        chunked(100 * (b'1;' + b'a' * 996 + b'\r\nx\r\n') + b'0\r\n\r\n'),
        'reading the response body: the framing of the chunked body is out of proportion: '
        '67132 bytes for 66 of content'),
    'framing in proportion to the content': good(
        chunked(b''.join(b'40;' + b'a' * 995 + b'\r\n' + 64 * b'x' + b'\r\n' for _ in range(200))
                + b'0\r\n\r\n'), 200 * 64 * b'x'),
}

PERSISTENCE_ROWS = {
    'connection: close': good(with_length(b'connection: close'), kept=False),
    'connection: close in any case': good(with_length(b'Connection: CLOSE'), kept=False),
    'connection: close first of a list': good(with_length(b'connection: close, x'), kept=False),
    'connection: close last of a list': good(with_length(b'connection: x ,\tclose'), kept=False),
    'connection: close before a tab': good(with_length(b'connection: close\t, x'), kept=False),
    'connection: close among keep-alive': good(
        with_length(b'connection: keep-alive,close,keep-alive'), kept=False),
    'connection: close among empty elements': good(
        with_length(b'connection: ,, close ,'), kept=False),
    'connection: close in the second field': good(
        with_length(b'connection: keep-alive', b'connection: close'), kept=False),
    'connection: close in the first field': good(
        with_length(b'connection: close', b'connection: keep-alive'), kept=False),
    'connection: close after obs-fold': good(with_length(b'connection: x,\r\n close'), kept=False),
    'connection: close with chunks': good(
        chunked(b'2\r\nok\r\n0\r\n\r\n', b'connection: close'), kept=False),
    'connection: close on HTTP/1.2': good(
        with_length(b'connection: close', start=b'HTTP/1.2 200 OK'), kept=False),
    'connection: close on HTTP/1.0': good(
        with_length(b'connection: close', start=OLD), kept=False),
    'connection: closed': good(with_length(b'connection: closed')),
    'connection: x-close': good(with_length(b'connection: x-close')),
    'connection: close in quotes': good(with_length(b'connection: "close"')),
    'connection: a field of another name': good(with_length(b'x-connection: close')),
    'connection: keep-alive': good(with_length(b'connection: keep-alive')),
    'connection: nothing': good(with_length(b'connection:')),
    'connection: keep-alive on HTTP/1.0': good(with_length(b'connection: keep-alive', start=OLD)),
    'connection: keep-alive in any case on HTTP/1.0': good(
        with_length(b'connection: x, Keep-Alive', start=OLD)),
    'connection: keep-alive first of a list on HTTP/1.0': good(
        with_length(b'connection: Keep-Alive, x', start=OLD)),
    'connection: keep-alive between tabs on HTTP/1.0': good(
        with_length(b'connection: x,\tkeep-alive\t, y', start=OLD)),
    'connection: keep-alive between spaces on HTTP/1.0': good(
        with_length(b'connection: x, keep-alive , y', start=OLD)),
    'connection: keep-alive in the second field on HTTP/1.0': good(
        with_length(b'connection: x', b'connection: keep-alive', start=OLD)),
    'connection: keep-alive and close on HTTP/1.0': good(
        with_length(b'connection: keep-alive', b'connection: close', start=OLD), kept=False),
    'connection: keep-alives on HTTP/1.0': good(
        with_length(b'connection: keep-alives', start=OLD), kept=False),
    'connection: x-keep-alive on HTTP/1.0': good(
        with_length(b'connection: x-keep-alive', start=OLD), kept=False),
    'connection: other tokens on HTTP/1.0': good(
        with_length(b'connection: x, y', start=OLD), kept=False),
    'connection: a keep-alive field alone on HTTP/1.0': good(
        with_length(b'keep-alive: timeout=9', start=OLD), kept=False),
    'connection: close in the request': good(
        with_length(), kept=False, sent=((b'connection', b'close'),)),
    'connection: close in the request, in a list': good(
        with_length(), kept=False, sent=((b'Connection', b'TE, Close'), (b'te', b'trailers'))),
    'connection: close in the request, and keep-alive in the response': good(
        with_length(b'connection: keep-alive'), kept=False, sent=((b'connection', b'close'),)),
    'connection: closed in the request': good(with_length(), sent=((b'connection', b'closed'),)),
    # A second is taken off for the way, so these leave no time at all.
    'keep-alive: timeout=0': good(with_length(b'keep-alive: timeout=0'), kept=False),
    'keep-alive: timeout=1': good(with_length(b'keep-alive: timeout=1'), kept=False),
    'keep-alive: timeout=1 among others': good(
        with_length(b'Keep-Alive: max=5, Timeout=1'), kept=False),
    'keep-alive: timeout=1 with whitespace': good(
        with_length(b'keep-alive: timeout = 1;max=5'), kept=False),
    'keep-alive: timeout=1 after a comma': good(
        with_length(b'keep-alive: max=5,timeout=1'), kept=False),
    'keep-alive: timeout=1 after a semicolon': good(
        with_length(b'keep-alive: max=5;timeout=1'), kept=False),
    'keep-alive: timeout=1 with tabs': good(
        with_length(b'keep-alive: max=5,\ttimeout\t=\t1'), kept=False),
    'keep-alive: timeout=1 in quotes': good(with_length(b'keep-alive: timeout="1"'), kept=False),
    'keep-alive: timeout=1 in the second field': good(
        with_length(b'keep-alive: max=5', b'keep-alive: timeout=1'), kept=False),
    'keep-alive: timeout=2': good(with_length(b'keep-alive: timeout=2, max=100')),
    'keep-alive: timeout=1000': good(with_length(b'keep-alive: timeout=1000')),
    'keep-alive: a timeout that no integer holds': good(
        with_length(b'keep-alive: timeout=' + 30 * b'9')),
    'keep-alive: a timeout of more digits than int() takes': good(
        with_length(b'keep-alive: timeout=' + 5000 * b'9')),
    'keep-alive: max alone': good(with_length(b'keep-alive: max=1')),
    'keep-alive: a parameter of another name': good(with_length(b'keep-alive: xtimeout=1')),
    'keep-alive: a timeout that is no number': good(
        with_length(b'keep-alive: timeout, timeout=, timeout=x')),
}

ROWS = {
    **STATUS_LINE_ROWS, **FIELDS_ROWS, **INTERIM_ROWS, **NO_BODY_ROWS, **CODING_ROWS,
    **LENGTH_ROWS, **CHUNKS_ROWS, **PERSISTENCE_ROWS}


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


@on_loops
async def test_a_response_has_the_outcome_of_its_row():
    assert await wrong_outcomes(
        ((name, row.expected, row, [row.raw]), {}) for name, row in ROWS.items()) == {}


@pytest.mark.parametrize('way', WAYS)
@on_one_loop
async def test_a_response_has_the_outcome_of_its_row_however_it_is_cut(way):
    cut, options = WAYS[way]
    assert await wrong_outcomes(
        ((name, row.expected, row, [piece for piece in cut(row.raw) if piece]), options)
        for name, row in ROWS.items()
        if len(row.raw) < LONG or options.get('recv_bufsize') != 1) == {}


# RFC 9112 9.3: the persistence that HTTP/1.1 has is asked for in no request of HTTP/1.0.
TO_HTTP_1_0_ROWS = {
    'nothing said': good(with_length(), kept=False),
    'nothing said, of HTTP/1.2': good(with_length(start=b'HTTP/1.2 200 OK'), kept=False),
    'nothing said, of HTTP/1.0': good(with_length(start=OLD), kept=False),
    'a keep-alive field alone': good(with_length(b'keep-alive: timeout=9'), kept=False),
    'keep-alive': good(with_length(b'connection: keep-alive')),
    'keep-alive, of HTTP/1.0': good(with_length(b'connection: Keep-Alive', start=OLD)),
    'keep-alive in a list': good(with_length(b'connection: x, Keep-Alive')),
    'keep-alive and close': good(
        with_length(b'connection: keep-alive', b'connection: close'), kept=False),
    'keep-alive and chunked': good(
        chunked(b'2\r\nok\r\n0\r\n\r\n', b'connection: keep-alive')),
    'keep-alive asked for, nothing said': good(
        with_length(), kept=False, sent=((b'connection', b'keep-alive'),)),
    'HEAD, nothing said': good(head(b'content-length: 2'), b'', method=b'HEAD', kept=False),
    '204, nothing said': good(head(start=NO_CONTENT), b'', code=b'204', kept=False),
    'a body to the end, and keep-alive': good(
        head(b'connection: keep-alive') + b'ok', kept=False, ends=True),
}


@on_loops
async def test_a_request_of_http_1_0_needs_a_response_that_says_keep_alive():
    assert await wrong_outcomes(
        ((name, row.expected, row, [row.raw]), {'http_version': b'HTTP/1.0'})
        for name, row in TO_HTTP_1_0_ROWS.items()) == {}


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


@on_loops
async def test_bytes_after_the_end_are_never_delivered_and_close_the_connection():
    surplus = itertools.cycle((EVIL, b'\x00', b'\r\n', b'0\r\n\r\n'))

    def runs():
        for name, row in ROWS.items():
            if 'error' in row.expected or row.ends:
                continue
            expected = {**row.expected, 'kept': False}
            more = next(surplus)
            for way, pieces, options in (
                    ('at once', [row.raw + more], {}),
                    # It must not be taken for the end of a section that ends before.
                    ('at once, an empty line', [row.raw + b'a: b\n\n'], {}),
                    # The first read is filled by the response: what follows is not in it.
                    ('in the next read', [row.raw + more], {'recv_bufsize': len(row.raw)}),
                    ('later', [row.raw, more], {})):
                yield (f'{name}, {way}', expected, row, pieces), {'surplus': True, **options}

    assert await wrong_outcomes(runs()) == {}


@on_loops
async def test_a_response_that_fills_its_read_keeps_its_connection():
    rows = {name: row for name, row in ROWS.items() if row.expected['kept']}
    assert await wrong_outcomes(
        ((name, row.expected, row, [row.raw]), {'recv_bufsize': len(row.raw)})
        for name, row in rows.items()) == {}


def end_of_head(raw):
    """Where the body starts."""
    end = 0
    while True:
        start, end = end, re.compile(rb'\n\r?\n').search(raw, end).end()
        if not re.match(rb'HTTP/1.. 1(?!01)', raw[start:]):
            return end


@on_loops
async def test_a_response_cut_short_is_never_taken_for_a_whole_one():
    rows = {'status line': ROWS['status line'], **INTERIM_ROWS, **NO_BODY_ROWS, **CODING_ROWS,
            **LENGTH_ROWS, **CHUNKS_ROWS}

    def runs():
        for name, row in rows.items():
            if 'error' in row.expected:
                continue
            body_starts = end_of_head(row.raw)
            last = body_starts if row.ends else len(row.raw)
            line_ends = [match.end() for match in re.finditer(b'\n', row.raw)][-4:]
            for cut in {0, 1, last - 2, last - 1, *line_ends}:
                if cut < last:
                    phase = 'head' if cut < body_starts else 'body'
                    expected = ended(b'', phase, started=cut > 0).expected
                    yield (f'{name}, {cut}', expected, row, [row.raw[:cut]]), {'ends': True}

    wrong = await wrong_outcomes(runs())
    # The texts begin with what is expected, and have rows of their own.
    for name, difference in list(wrong.items()):
        text, phase = difference.pop('text')
        if text.startswith(f'{phase}: {CLOSED}') and not difference:
            del wrong[name]
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
