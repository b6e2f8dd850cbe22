"""Tests of lowhaio_websocket: what goes over the wire, and what the caller gets to know of it."""

import asyncio
import base64
import contextlib
import functools
import gc
import hashlib
import importlib.util
import itertools
import pathlib
import re
import socket
import struct
import sys
import zlib
from http.cookiejar import CookieJar

import pytest

import lowhaio_websocket
from lowhaio import HttpConnectionError, HttpDataError, HttpError
from lowhaio_auth import basic, bearer, digest
from lowhaio_aws_sigv4 import signed
from lowhaio_aws_sigv4_unsigned_payload import signed as signed_without_body
from lowhaio_compression import decompressed
from lowhaio_cookies import with_cookies
from lowhaio_redirect import redirectable
from lowhaio_retry import retry
from lowhaio_websocket import (
    WebSocket,
    WebSocketClosedError,
    WebSocketHandshakeError,
    WebSocketProtocolError,
    websocket,
)
from tests.harness import (
    CLOCKED,
    OK,
    Server,
    certified,
    connecting_to,
    cut_into_bytes,
    forever,
    head,
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
    small_sock,
    trusting,
    turns,
    until,
    value,
    values_of,
)

# More than what buffers hold between a client with such a socket and a server that does not read.
HUGE = bytes(10_000_000)
narrow_sock = functools.partial(small_sock, size=2 ** 18)

TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 0x81, 0x82, 0x80, 0x88, 0x89, 0x8a
FIN, COMPRESSED, MASKED = 0x80, 0x40, 0x80


# ----------------------------------------------------------------------- the server's end


def frame(first, payload=b'', masked=0):
    """A frame as a server sends it: the first byte, and what follows."""
    length = len(payload)
    if length < 126:
        return bytes((first, masked | length)) + payload
    if length < 65536:
        return struct.pack('!BBH', first, masked | 126, length) + payload
    return struct.pack('!BBQ', first, masked | 127, length) + payload


def closing(code, reason=''):
    return struct.pack('!H', code) + reason.encode()


def accept_of(key):
    """RFC 6455 4.2.2."""
    digest = hashlib.sha1(key + b'258EAFA5-E914-47DA-95CA-C5AB0DC85B11').digest()
    return base64.b64encode(digest)


def accepting_head(asked, *fields):
    return head(
        b'upgrade: websocket', b'connection: Upgrade',
        b'sec-websocket-accept: ' + accept_of(value(asked, b'sec-websocket-key')), *fields,
        start=b'HTTP/1.1 101 Switching Protocols')


class Wire:
    """A connection of a server, in frames."""

    def __init__(self, peer):
        self.peer = peer

    async def frame(self):
        """The first byte and the payload of the next frame, which must be masked."""
        first, length = await self.peer.read(2)
        assert length & MASKED
        length &= 127
        if length > 125:
            size = 2 if length == 126 else 8
            shortest = 126 if size == 2 else 65536
            length = int.from_bytes(await self.peer.read(size), 'big')
            assert length >= shortest
        mask = await self.peer.read(4)
        payload = await self.peer.read(length)
        repeated = (mask * (length // 4 + 1))[:length]
        return first, (int.from_bytes(payload, 'big')
                       ^ int.from_bytes(repeated, 'big')).to_bytes(length, 'big')

    async def send(self, *pieces):
        await self.peer.send(*pieces)

    async def echo(self):
        """Send back all messages, and the close frame."""
        while True:
            first, payload = await self.frame()
            await self.send(frame(first, payload))
            if first == CLOSE:
                return


class Accepting:
    """A script that accepts a WebSocket and then runs a function of its Wire."""

    def __init__(self, script=Wire.echo, *fields, beside=b''):
        self.script = script
        self.fields = fields
        # Bytes that are sent together with the head.
        self.beside = beside
        self.heads = []
        self.ended = 0

    async def __call__(self, peer):
        asked = await peer.read_head()
        self.heads.append(asked)
        await peer.send(accepting_head(asked, *self.fields) + self.beside)
        try:
            await self.script(Wire(peer))
        finally:
            self.ended += 1


@contextlib.asynccontextmanager
async def serving(script=Wire.echo, *fields, beside=b'', **options):
    """Yield a request, the URL of a server that accepts WebSockets, and its script."""
    accepting = Accepting(script, *fields, beside=beside)
    async with Server(accepting) as server, pool(**options) as request:
        yield request, f'ws://127.0.0.1:{server.port}/', accepting


def origin(url):
    return url.rstrip('/')


# -------------------------------------------------------------------------------- opening


@on_loops
async def test_messages_go_both_ways():
    async with serving() as (request, url, accepting):
        async with websocket(request, url + 'chat?a=b') as ws:
            for message in 'hello', b'\0\xff', '', b'', 'ä€😀', bytes(200), 'x' * 70_000:
                await ws.send(message)
                received = await ws.receive()
                assert (received, type(received)) == (message, type(message))
            for message in bytearray(b'abc'), memoryview(b'abc'):
                await ws.send(message)
                assert await ws.receive() == b'abc'
            assert ws.subprotocol is None
            assert (b'upgrade', b'websocket') in ws.headers
            assert isinstance(ws, WebSocket)
    [asked] = accepting.heads
    key = value(asked, b'sec-websocket-key')
    assert len(base64.b64decode(key, validate=True)) == 16
    assert asked == (
        b'GET /chat?a=b HTTP/1.1\r\nhost: %b\r\nupgrade: websocket\r\nconnection: upgrade\r\n'
        b'sec-websocket-key: %b\r\nsec-websocket-version: 13\r\n\r\n'
        % (url[5:-1].encode(), key))


@on_loops
async def test_it_unpacks_as_send_and_receive():
    async with serving() as (request, url, _):
        async with websocket(request, url) as (send, receive):
            await send('hello')
            assert await receive() == 'hello'


@on_loops
async def test_each_handshake_has_its_own_key():
    async with serving() as (request, url, accepting):
        opening = websocket(request, url)
        for _ in range(2):
            async with opening as ws:
                await ws.send('')
    first, second = (value(asked, b'sec-websocket-key') for asked in accepting.heads)
    assert first != second


@pytest.mark.parametrize('scheme', ['ws', 'http', 'WS', 'wss', 'https', 'Wss'])
@on_loops
async def test_schemes(scheme):
    is_tls = scheme.lower() in ('wss', 'https')
    accepting = Accepting()
    async with Server(accepting, certified('a.example') if is_tls else None) as server:
        async with pool(get_connection=connecting_to(http=server.port, https=server.port),
                        get_ssl_context=trusting) as request:
            async with websocket(request, f'{scheme}://a.example/') as ws:
                await ws.send('x' * 300_000)
                assert len(await ws.receive()) == 300_000
            assert ws.close_code == 1000


@on_loops
async def test_what_request_takes_is_passed_on():
    def get_logger_adapter(extra):
        extras.append(extra)
        return lowhaio_websocket.SILENT

    extras = []
    async with serving() as (request, url, accepting):
        async with websocket(request, url, params=(('a', 'b c'),), headers=((b'Origin', b'o'),),
                             get_logger_adapter=get_logger_adapter):
            pass
    [asked] = accepting.heads
    assert asked.startswith(b'GET /?a=b+c HTTP/1.1\r\n')
    assert values_of(asked, b'Origin') == [b'o']
    assert extras


@on_loops
async def test_a_target_and_the_name_of_a_server_are_passed_on():
    names = []
    context = certified('a.example')
    context.sni_callback = lambda sock, name, context: names.append(name)
    accepting = Accepting()
    async with Server(accepting, context) as server, pool(get_ssl_context=trusting) as request:
        async with websocket(request, f'wss://127.0.0.1:{server.port}/', target=b'/a[b]|{c}',
                             server_hostname='a.example') as ws:
            await ws.send('hello')
            assert await ws.receive() == 'hello'
    assert accepting.heads[0].startswith(b'GET /a[b]|{c} HTTP/1.1\r\n')
    assert names == ['a.example']


@on_clock
async def test_the_time_to_read_is_that_of_the_handshake():
    async def script(wire):
        await asyncio.sleep(1000)
        await wire.send(frame(TEXT, b'at last'))

    async with Server(holding(b'')) as server, pool() as request:
        seconds, task = await measured(
            websocket(request, server.url, timeouts={'read': 0.5}).__aenter__())
    error = task.exception()
    assert (seconds, type(error), error.phase) == (0.5, HttpDataError, 'head')

    async with serving(script) as (request, url, _):
        async with websocket(request, url, timeouts={'read': 0.5}, close_timeout=0) as ws:
            seconds, task = await measured(ws.receive())
    assert (seconds, task.result()) == (1000, 'at last')


@on_clock
async def test_the_time_to_write_is_that_of_each_progress_of_a_message():
    async def script(wire):
        await forever()

    async with serving(script) as (request, url, _):
        async with websocket(request, url, timeouts={'write': 2}) as ws:
            seconds, task = await measured(ws.send(bytes(50_000_000)))
    error = task.exception()
    assert (seconds, type(error)) == (2, WebSocketClosedError)
    assert (error.__cause__.phase, type(error.__cause__.__cause__)) == ('send', TimeoutError)


@on_loops
async def test_messages_that_come_with_the_head():
    async with serving(beside=frame(TEXT, b'first') + frame(TEXT, b'second')[:4]) as (
            request, url, _):
        async with websocket(request, url) as ws:
            assert await ws.receive() == 'first'


@pytest.mark.parametrize('offered, chosen', [
    (('chat', 'superchat'), 'superchat'), (('chat',), None)])
@on_loops
async def test_subprotocols(offered, chosen):
    offered = tuple(offered)
    fields = () if chosen is None else (b'sec-websocket-protocol: ' + chosen.encode(),)
    async with serving(Wire.echo, *fields) as (request, url, accepting):
        async with websocket(request, url, iter(offered)) as ws:
            assert ws.subprotocol == chosen
    assert value(accepting.heads[0], b'sec-websocket-protocol') == ', '.join(offered).encode()


@pytest.mark.parametrize('answer, code, body', [
    (OK, b'200', b'ok'),
    (response(403, b'who are you?', b'x-a: b'), b'403', b'who are you?'),
    (response(426, b'', b'upgrade: websocket'), b'426', b''),
    (response(302, b'', b'location: /'), b'302', b''),
    (response(500, bytes(200_000)), b'500', bytes(65536)),
    # It is cut off.
    (head(b'content-length: 9', start=b'HTTP/1.1 400 Bad') + b'some', b'400', b'some'),
])
@on_loops
async def test_an_answer_that_is_no_101(answer, code, body):
    async def script(peer):
        await peer.read_head()
        await peer.send(answer)

    async with Server(script) as server, pool() as request:
        with pytest.raises(WebSocketHandshakeError) as caught:
            async with websocket(request, server.url + '?secret'):
                raise AssertionError
    error = caught.value
    assert str(error) == (
        f'{server.origin}, the WebSocket handshake was answered with {code.decode()}')
    assert (error.code, error.body, error.response_started) == (code, body, True)
    assert isinstance(error, HttpDataError)
    assert error.phase == 'head'
    assert error.headers
    assert not isinstance(error, WebSocketClosedError)


@on_clock
async def test_an_answer_that_does_not_end_is_not_waited_for():
    script = holding(head(b'content-length: 9', start=b'HTTP/1.1 403 No') + b'some')
    async with Server(script) as server, pool() as request:
        task = asyncio.ensure_future(websocket(request, server.url).__aenter__())
        await until(lambda: script.sent)
        await passing(0.9)
        assert not task.done()
        await passing(0.2)
        with pytest.raises(WebSocketHandshakeError) as caught:
            await task
        assert caught.value.body == b'some'
        await until(lambda: script.closed)


UPGRADE = (b'upgrade: websocket', b'connection: upgrade')
BAD_HANDSHAKES = {
    'no accept': (lambda accept: UPGRADE, 'missing Sec-WebSocket-Accept header'),
    'the accept of another key': (
        lambda accept: (*UPGRADE, b'sec-websocket-accept: ' + accept_of(b'x')),
        f'invalid Sec-WebSocket-Accept header: {accept_of(b"x").decode()}'),
    'two accepts': (
        lambda accept: (*UPGRADE, accept, accept),
        'invalid Sec-WebSocket-Accept header: multiple values'),
    'another upgrade': (
        lambda accept: (b'upgrade: h2c', UPGRADE[1], accept), 'invalid Upgrade header: h2c'),
    'no upgrade': (lambda accept: (UPGRADE[1], accept), 'missing Upgrade header'),
    'no connection': (lambda accept: (UPGRADE[0], accept), 'missing Connection header'),
    'a subprotocol': (
        lambda accept: (*UPGRADE, accept, b'sec-websocket-protocol: x'),
        'unsupported subprotocol: x'),
    'two subprotocols': (
        lambda accept: (*UPGRADE, accept, b'sec-websocket-protocol: chat, chat'),
        'invalid Sec-WebSocket-Protocol header: multiple values: chat, chat'),
    'an extension': (
        lambda accept: (*UPGRADE, accept, b'sec-websocket-extensions: x-a; b=1'),
        "Unsupported extension: name = x-a, params = [('b', '1')]"),
    'a window that is too large': (
        lambda accept: (*UPGRADE, accept, b'sec-websocket-extensions: '
                        b'permessage-deflate; server_max_window_bits=16'),
        "Unsupported extension: name = permessage-deflate, "
        "params = [('server_max_window_bits', '16')]"),
    'a field that can not be read': (
        lambda accept: (*UPGRADE, accept, b'sec-websocket-extensions: ='),
        'invalid Sec-WebSocket-Extensions header: expected token at 0 in ='),
}


@pytest.mark.parametrize('name', BAD_HANDSHAKES)
@on_loops
async def test_bad_handshakes(name):
    async def script(peer):
        asked = await peer.read_head()
        accept = b'sec-websocket-accept: ' + accept_of(value(asked, b'sec-websocket-key'))
        await peer.send(head(*fields(accept), start=b'HTTP/1.1 101 Switching Protocols'))
        await peer.closed()
        closed.append(True)

    fields, message = BAD_HANDSHAKES[name]
    closed = []
    async with Server(script) as server, pool() as request:
        with pytest.raises(WebSocketHandshakeError) as caught:
            async with websocket(request, server.url, ('chat',), compression=True):
                raise AssertionError
        await until(lambda: closed)
    error = caught.value
    assert str(error) == f'{server.origin}, the WebSocket handshake failed: {message}'
    assert error.__cause__ is not None
    assert (error.code, error.body) == (b'101', b'')
    assert error.headers[0][0] in (b'upgrade', b'connection')


@on_loops
async def test_what_was_not_asked_for_is_refused():
    for field, message in (
            (b'sec-websocket-protocol: x', 'no subprotocols supported'),
            (b'sec-websocket-extensions: permessage-deflate', 'no extensions supported')):
        async with serving(Wire.echo, field) as (request, url, _):
            with pytest.raises(WebSocketHandshakeError, match=message):
                async with websocket(request, url):
                    raise AssertionError


@on_loops
async def test_errors_of_the_request_come_as_they_are():
    with socket.create_server(('127.0.0.1', 0)) as listening:
        port = listening.getsockname()[1]
    async with pool() as request:
        for url in f'ws://127.0.0.1:{port}/', 'ws://', 'ftp://a/', 'ws://a:b@127.0.0.1/', '/x':
            with pytest.raises(HttpConnectionError):
                async with websocket(request, url):
                    raise AssertionError


async def unwanted(*args, **kwargs):
    raise AssertionError


@pytest.mark.parametrize('args, kwargs, kind, message', [
    ((None, 'ws://a/'), {}, TypeError, 'request must be a coroutine function, got NoneType'),
    ((unwanted, b'ws://a/'), {}, TypeError, 'url must be a str, got bytes'),
    ((unwanted, 'ws://a/', 'chat'), {}, TypeError,
     'subprotocols must be several, such as a tuple, got a str'),
    ((unwanted, 'ws://a/', ('a b',)), {}, ValueError,
     "subprotocols must be tokens, each a str, got 'a b'"),
    ((unwanted, 'ws://a/', (b'a',)), {}, ValueError,
     "subprotocols must be tokens, each a str, got b'a'"),
    ((unwanted, 'ws://a/', ('a', 'a')), {}, ValueError,
     'subprotocols must have no name twice'),
    ((unwanted, 'ws://a/', (), ((b'Upgrade', b'x'),)), {}, ValueError,
     "headers must not have b'Upgrade', which the handshake sets"),
    ((unwanted, 'ws://a/'), {'max_message': 0}, ValueError,
     'max_message must be a number of bytes, 1 or more, or None, got 0'),
    ((unwanted, 'ws://a/'), {'max_message': 1.5}, ValueError,
     'max_message must be a number of bytes, 1 or more, or None, got 1.5'),
    ((unwanted, 'ws://a/'), {'compression': 'deflate'}, TypeError,
     "compression must be a bool, got 'deflate'"),
    ((unwanted, 'ws://a/'), {'close_timeout': -1}, ValueError,
     'close_timeout must be a number, 0 or more, got -1'),
    ((unwanted, 'ws://a/'), {'close_timeout': None}, ValueError,
     'close_timeout must be a number, 0 or more, got None'),
    ((unwanted, 'ws://a/'), {'body': None}, TypeError, 'a WebSocket has no body'),
    ((unwanted, 'ws://a/'), {'method': b'GET'}, TypeError, 'a WebSocket has no method'),
])
def test_bad_arguments_fail_at_once(args, kwargs, kind, message):
    with pytest.raises(kind) as caught:
        websocket(*args, **kwargs)
    assert str(caught.value) == message


@on_loops
async def test_one_opening_opens_one_websocket_at_a_time():
    async with serving() as (request, url, accepting):
        opening = websocket(request, url)
        assert repr(opening) == f'<websocket {origin(url)}>'
        async with opening:
            with pytest.raises(RuntimeError, match='this WebSocket is open'):
                async with opening:
                    raise AssertionError
    assert len(accepting.heads) == 1


# ------------------------------------------------------------------ what a server sends
#
# Each row: the bytes that follow the handshake, the messages that they are, the code that the
# client's close frame has, and what ends the iteration: None, or a class and the end of its
# message. Each is sent whole, byte by byte, and together with the head.

NORMAL = frame(CLOSE, closing(1000))
BY_PEER = WebSocketClosedError
BROKEN = WebSocketProtocolError


def broken(code, message):
    return code, (BROKEN, f'the WebSocket was closed with {code}: {message}')


def deflated(data, *, end=zlib.Z_SYNC_FLUSH):
    compressor = zlib.compressobj(wbits=-15)
    return (compressor.compress(data) + compressor.flush(end)).removesuffix(b'\0\0\xff\xff')


ROWS = {
    # RFC 6455 5.2: lengths
    'text': (frame(TEXT, b'hello') + NORMAL, ['hello'], 1000, None),
    'empty': (frame(TEXT) + frame(BINARY) + NORMAL, ['', b''], 1000, None),
    '125 bytes': (frame(BINARY, bytes(125)) + NORMAL, [bytes(125)], 1000, None),
    '126 bytes': (frame(BINARY, bytes(126)) + NORMAL, [bytes(126)], 1000, None),
    '65535 bytes': (frame(BINARY, bytes(65535)) + NORMAL, [bytes(65535)], 1000, None),
    '65536 bytes': (frame(TEXT, b'x' * 65536) + NORMAL, ['x' * 65536], 1000, None),
    'a length that could be shorter': (
        struct.pack('!BBH', TEXT, 126, 2) + b'ok' + struct.pack('!BBQ', TEXT, 127, 2) + b'ok'
        + NORMAL, ['ok', 'ok'], 1000, None),
    'as long as it may be': (
        frame(BINARY, bytes(100_000)) + NORMAL, [bytes(100_000)], 1000, None),
    'too long': (frame(TEXT, b'a') + frame(BINARY, bytes(100_001)), ['a'], *broken(
        1009, 'frame with 100001 bytes exceeds limit of 100000 bytes')),
    'a length beyond all': (struct.pack('!BBQ', TEXT, 127, 2 ** 64 - 1), [], *broken(
        1009, 'frame with 18446744073709551615 bytes exceeds limit of 100000 bytes')),
    'masked': (frame(TEXT, b'abcdhello', masked=MASKED), [], *broken(1002, 'incorrect masking')),
    'masked, and long': (
        frame(TEXT, bytes(200), masked=MASKED), [], *broken(1002, 'incorrect masking')),
    # 5.2: reserved bits and opcodes
    **{f'reserved bit {bit:x}': (
        frame(TEXT, b'a') + frame(TEXT | bit, b'hello') + frame(TEXT, b'never'), ['a'],
        *broken(1002, 'reserved bits must be 0')) for bit in (0x10, 0x20, 0x40, 0x70)},
    'a reserved bit in a ping': (
        frame(PING | 0x20), [], *broken(1002, 'reserved bits must be 0')),
    **{f'opcode {opcode:x}': (frame(FIN | opcode), [], *broken(1002, 'invalid opcode'))
       for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    # 5.4: fragmentation
    'fragments': (
        frame(1, b'he') + frame(0, b'l') + frame(CONTINUATION, b'lo') + frame(TEXT, b'x')
        + frame(2, b'\0') + frame(CONTINUATION, b'\xff') + NORMAL,
        ['hello', 'x', b'\0\xff'], 1000, None),
    'empty fragments': (
        frame(1) + frame(0) + frame(0) + frame(CONTINUATION) + NORMAL, [''], 1000, None),
    'control frames between fragments': (
        frame(1, b'he') + frame(PING, b'1') + frame(PONG, b'unasked')
        + frame(CONTINUATION, b'llo') + NORMAL, ['hello'], 1000, None),
    'a continuation of nothing': (
        frame(CONTINUATION, b'a'), [], *broken(1002, 'unexpected continuation frame')),
    'a continuation after the end': (
        frame(TEXT, b'a') + frame(0, b'b'), ['a'],
        *broken(1002, 'unexpected continuation frame')),
    'a message between fragments': (
        frame(1, b'a') + frame(TEXT, b'b'), [], *broken(1002, 'expected a continuation frame')),
    'fragments that are too long together': (
        frame(2, bytes(60_000)) + frame(0, bytes(40_000)) + frame(0, b'x'), [], *broken(
            1009, 'frame with 1 bytes after reading 100000 bytes '
                  'exceeds limit of 100000 bytes')),
    # 5.5: control frames
    'a ping with 125 bytes': (frame(PING, bytes(125)) + NORMAL, [], 1000, None),
    'a ping with 126 bytes': (
        frame(PING, bytes(126)), [], *broken(1002, 'control frame too long')),
    'a fragmented ping': (frame(9, b''), [], *broken(1002, 'fragmented control frame')),
    'a pong that nobody asked for': (frame(PONG, b'a') + NORMAL, [], 1000, None),
    # 7.4: the close frame
    'going away': (frame(CLOSE, closing(1001)), [], 1001, None),
    'no code': (frame(CLOSE), [], None, None),
    'a code with a reason': (
        frame(CLOSE, closing(1008, 'no')), [], 1008,
        (BY_PEER, "the peer closed the WebSocket: 1008 'no'")),
    **{f'code {code}': (
        frame(TEXT, b'a') + frame(CLOSE, closing(code)), ['a'], code,
        (BY_PEER, f'the peer closed the WebSocket: {code}'))
       for code in (1002, 1003, 1007, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999)},
    **{f'bad code {code}': (
        frame(CLOSE, closing(code)), [], *broken(1002, 'invalid status code'))
       for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)},
    'half a code': (frame(CLOSE, b'\x03'), [], *broken(1002, 'close frame too short')),
    'a reason that is no text': (
        frame(CLOSE, closing(1000) + b'\xff'), [], *broken(
            1007, "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte")),
    'a close frame that is too long': (
        frame(CLOSE, closing(1000, 'x' * 124)), [], *broken(1002, 'control frame too long')),
    'a close frame between fragments': (frame(1, b'a') + NORMAL, [], 1000, None),
    'messages after the close frame': (
        frame(TEXT, b'a') + NORMAL + frame(TEXT, b'never') + b'\xff' * 9, ['a'], 1000, None),
    # 8.1: texts
    'a text in UTF-8': (
        frame(TEXT, 'κόσμε😀\0'.encode()) + NORMAL, ['κόσμε😀\0'], 1000, None),
    'a character in two fragments': (
        frame(1, b'\xce') + frame(CONTINUATION, b'\xba') + NORMAL, ['κ'], 1000, None),
    **{f'no text: {data!r}': (
        frame(TEXT, b'a') + frame(TEXT, data), ['a'], *broken(
            1007, f"'utf-8' codec can't decode {message}"))
       for data, message in (
           (b'\xff', 'byte 0xff in position 0: invalid start byte'),
           (b'a\xce', 'byte 0xce in position 1: unexpected end of data'),
           (b'\xc0\x80', 'byte 0xc0 in position 0: invalid start byte'),
           (b'\xed\xa0\x80', 'byte 0xed in position 0: invalid continuation byte'),
           (b'\xf4\x90\x80\x80', 'byte 0xf4 in position 0: invalid continuation byte'))},
    # It fails before the message ends.
    'a fragment that can not become a text': (
        frame(1, b'a\xff'), [], *broken(
            1007, "'utf-8' codec can't decode byte 0xff in position 1: invalid start byte")),
    'a character that the last fragment cuts': (
        frame(1, b'a') + frame(CONTINUATION, b'\xce'), [], *broken(
            1007, "'utf-8' codec can't decode byte 0xce in position 0: unexpected end of data")),
}

DEFLATE = b'sec-websocket-extensions: permessage-deflate; server_no_context_takeover'
COMPRESSED_ROWS = {
    # RFC 7692
    'compressed': (
        frame(COMPRESSED | TEXT, deflated(b'hello')) + frame(TEXT, b'plain')
        + frame(COMPRESSED | BINARY, deflated(b'\0' * 1000)) + NORMAL,
        ['hello', 'plain', bytes(1000)], 1000, None),
    'compressed and empty': (frame(COMPRESSED | TEXT, b'\0') + NORMAL, [''], 1000, None),
    'compressed fragments': (
        frame(COMPRESSED | 1, deflated(b'hello')[:3]) + frame(PING, b'')
        + frame(CONTINUATION, deflated(b'hello')[3:]) + NORMAL, ['hello'], 1000, None),
    'as long as it may be': (
        frame(COMPRESSED | BINARY, deflated(bytes(100_000))) + NORMAL,
        [bytes(100_000)], 1000, None),
    'too long once it is decompressed': (
        frame(COMPRESSED | BINARY, deflated(bytes(10_000_000))), [], *broken(
            1009, 'frame exceeds limit of 100000 bytes')),
    'fragments that are too long once they are decompressed': (
        frame(COMPRESSED | 2, deflated(bytes(60_000)) + b'\0\0\xff\xff')
        + frame(CONTINUATION, deflated(bytes(60_000))), [], *broken(
            1009, 'frame after reading 60000 bytes exceeds limit of 100000 bytes')),
    'compressed continuation': (
        frame(COMPRESSED | 1, deflated(b'a')) + frame(COMPRESSED | CONTINUATION, b''), [],
        *broken(1002, 'RSV1 bit set in continuation frame')),
    'a compressed ping': (
        frame(COMPRESSED | PING, b''), [], *broken(1002, 'reserved bits must be 0')),
    'not compressed at all': (
        frame(COMPRESSED | TEXT, b'\xff\xff\xff'), [], *broken(1002, 'decompression failed')),
    'no text': (
        frame(COMPRESSED | TEXT, deflated(b'\xff')), [], *broken(
            1007, "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte")),
}
ALL_ROWS = {**{('plain', name): row for name, row in ROWS.items()},
            **{('deflate', name): row for name, row in COMPRESSED_ROWS.items()}}


def on_one_clock(test):
    return on_loops(test, ['asyncio'], CLOCKED)


# The clock stands, so no time-out passes however long it takes to send something byte by byte.
@pytest.mark.parametrize('way', ['whole', 'byte by byte', 'with the head'])
@pytest.mark.parametrize('key', ALL_ROWS, ids=' '.join)
@on_one_clock
async def test_what_a_server_sends(key, way):
    async def script(wire):
        await wire.send(*(cut_into_bytes(sent) if way == 'byte by byte' else [sent]))
        frames.append(await wire.frame())
        while frames[-1][0] != CLOSE:
            frames.append(await wire.frame())

    sent, expected, code, end = ALL_ROWS[key]
    extension = [DEFLATE] if key[0] == 'deflate' else []
    beside, sent = (sent, b'') if way == 'with the head' else (b'', sent)
    frames, received = [], []
    async with serving(script, *extension, beside=beside) as (request, url, accepting):
        async with websocket(request, url, max_message=100_000, compression=bool(extension)) as ws:
            try:
                async for message in ws:
                    received.append(message)
            except WebSocketClosedError as error:
                assert end is not None
                assert type(error) is end[0]
                assert str(error) == f'{origin(url)}, {end[1]}'
                assert error.code == code
                assert (error.__cause__ is not None) == (type(error) is BROKEN)
            else:
                assert end is None
            # It stays so.
            with pytest.raises(WebSocketClosedError):
                await ws.receive()
            with pytest.raises(WebSocketClosedError):
                await ws.send('x')
            with pytest.raises(WebSocketClosedError):
                await ws.ping()
        await until(lambda: accepting.ended)
    assert received == expected
    assert [type(message) for message in received] == [type(message) for message in expected]
    said = frames[-1][1]
    assert said[:2] == (b'' if code is None else struct.pack('!H', code))
    assert ws.close_code == (code or 1005)


@pytest.mark.parametrize('limit', [1, 3, 125, 126])
@on_loops
async def test_max_message(limit):
    async with serving() as (request, url, _):
        async with websocket(request, url, max_message=limit) as ws:
            await ws.send('x' * limit)
            assert await ws.receive() == 'x' * limit
            await ws.send('x' * (limit + 1))
            with pytest.raises(WebSocketProtocolError) as caught:
                await ws.receive()
            assert caught.value.code == 1009


@on_loops
async def test_a_message_of_any_length_without_max_message():
    async with serving() as (request, url, _):
        async with websocket(request, url, max_message=None) as ws:
            await ws.send(bytes(3_000_000))
            assert len(await ws.receive()) == 3_000_000


@pytest.mark.parametrize('length', [1, 2, 3, 10])
@on_loops
async def test_a_connection_that_ends_within_a_frame(length):
    async def script(wire):
        await wire.send(frame(TEXT, b'whole') + frame(TEXT, bytes(200))[:length])

    async with serving(script) as (request, url, _):
        async with websocket(request, url) as ws:
            assert await ws.receive() == 'whole'
            with pytest.raises(WebSocketClosedError) as caught:
                await ws.receive()
    assert str(caught.value) == f'{origin(url)}, the connection was lost'
    assert (caught.value.code, caught.value.reason) == (1006, '')
    assert (ws.close_code, ws.close_reason) == (1006, '')
    assert type(caught.value) is WebSocketClosedError


@on_loops
async def test_a_connection_that_is_reset():
    async def script(wire):
        await wire.frame()
        wire.peer.reset()

    async with serving(script) as (request, url, _):
        async with websocket(request, url) as ws:
            await ws.send('x')
            with pytest.raises(WebSocketClosedError) as caught:
                async for _ in ws:
                    raise AssertionError
            cause = caught.value.__cause__
            assert isinstance(cause, HttpError)
            assert str(caught.value) == f'{origin(url)}, the connection was lost: {cause}'
            assert (caught.value.code, caught.value.phase) == (1006, 'content')
            with pytest.raises(WebSocketClosedError):
                await ws.send('x')
            assert repr(ws) == f'<WebSocket {origin(url)} has ended, 0 messages wait, 0 pings>'
            await ws.close()


async def is_lost(task):
    with pytest.raises(WebSocketClosedError, match='the connection was lost: ') as caught:
        await task
    assert caught.value.code == 1006
    assert isinstance(caught.value.__cause__, HttpDataError)


@on_loops
async def test_a_reset_that_a_send_meets_before_the_receive_beside_it():
    async def script(wire):
        peers.append(wire.peer)
        await forever()

    peers = []
    async with serving(script) as (request, url, _):
        async with websocket(request, url) as ws:
            receiving = asyncio.ensure_future(ws.receive())
            await until(lambda: peers)
            await turns(3)
            peers[0].reset()
            for task in asyncio.ensure_future(ws.send('x')), receiving:
                await is_lost(task)


# -------------------------------------------------------------------------------- sending


@on_loops
async def test_frames_that_are_sent():
    async def script(wire):
        for _ in range(len(lengths) + 1):
            frames.append(await wire.frame())
        await wire.send(NORMAL)

    frames = []
    lengths = [0, 1, 3, 125, 126, 65535, 65536]
    async with serving(script) as (request, url, _):
        async with websocket(request, url) as ws:
            for length in lengths:
                await ws.send(b'y' * length)
            await ws.send('ä')
            assert [message async for message in ws] == []
    assert frames == [*((BINARY, b'y' * length) for length in lengths), (TEXT, 'ä'.encode())]


@on_loops
async def test_masks_are_new_each_time():
    async def script(wire):
        data.append(await wire.peer.read(10 * 3000))
        await wire.send(NORMAL)

    data = []
    async with serving(script) as (request, url, _):
        async with websocket(request, url) as ws:
            for _ in range(3000):
                await ws.send(b'abcd')
            assert [message async for message in ws] == []
    masks = {data[0][start + 2:start + 6] for start in range(0, len(data[0]), 10)}
    assert len(masks) > 2990


@pytest.mark.parametrize('field', [
    b'permessage-deflate', b'permessage-deflate; client_no_context_takeover',
    b'permessage-deflate; server_no_context_takeover; client_no_context_takeover'])
@on_loops
async def test_compressed_messages_are_sent_and_received(field):
    async def script(wire):
        frames.extend([await wire.frame() for _ in range(7)])
        await wire.send(*(frame(*each) for each in frames[:3]), NORMAL)

    frames = []
    async with serving(script, b'sec-websocket-extensions: ' + field) as (
            request, url, accepting):
        async with websocket(request, url, compression=True) as ws:
            # What the compressor knows of the first may be used for the next, and is here.
            texts = ['hello ' * 10, 'hello ' * 10, 'x' * 10_000]
            for text in texts:
                await ws.send(text)
            await ws.send([b'frag', b'ments'])
            await ws.send(bytes(1000))
            if b'client_no' not in field:
                assert [await ws.receive() for _ in texts] == texts
            else:
                assert [await ws.receive() for _ in texts[:1]] == texts[:1]
    assert value(accepting.heads[0], b'sec-websocket-extensions').startswith(
        b'permessage-deflate')
    assert [first for first, _ in frames[:3]] == [COMPRESSED | TEXT] * 3
    assert [first for first, _ in frames[3:]] == [
        COMPRESSED | 2, 0, CONTINUATION, COMPRESSED | BINARY]
    assert sum(len(payload) for _, payload in frames[:3]) < 100


@on_loops
async def test_fragments():
    async def letters():
        for letter in 'abc':
            sent.append(letter)
            yield letter
            # The one before has been sent.
            await until(lambda: len(frames) == len(sent))

    async def script(wire):
        while True:
            frames.append(await wire.frame())
            if frames[-1][0] == CLOSE:
                await wire.send(NORMAL)
                return

    sent, frames = [], []
    async with serving(script) as (request, url, accepting):
        async with websocket(request, url) as ws:
            await ws.send(letters())
            await ws.send([b'\0', bytearray(b'1'), memoryview(b'2')])
            await ws.send(iter(['x']))
            await ws.send([])
            await ws.send('')
        await until(lambda: accepting.ended)
    assert frames == [
        (1, b'a'), (0, b'b'), (0, b'c'), (CONTINUATION, b''),
        (2, b'\0'), (0, b'1'), (0, b'2'), (CONTINUATION, b''),
        (1, b'x'), (CONTINUATION, b''), (TEXT, b''), (CLOSE, closing(1000))]


@pytest.mark.parametrize('fragments, message', [
    ([b'a', 'b'], 'the fragments of a message must all be str, or all be bytes, got str'),
    (['a', b'b'], 'the fragments of a message must all be str, or all be bytes, got bytes'),
    (['a', None], 'the fragments of a message must all be str, or all be bytes, got NoneType')])
@on_loops
async def test_a_message_that_can_not_be_finished_closes(fragments, message):
    async with serving() as (request, url, accepting):
        async with websocket(request, url) as ws:
            with pytest.raises(TypeError) as caught:
                await ws.send(fragments)
            assert str(caught.value) == message
            with pytest.raises(WebSocketClosedError) as closed:
                await ws.send('more')
            assert str(closed.value) == \
                f"{origin(url)}, the WebSocket was closed: 1011 'a message was cut short'"
    assert (ws.close_code, ws.close_reason) == (1011, 'a message was cut short')


class Letters:
    """An async iterator without `aclose`."""

    def __init__(self, letters):
        self.letters = iter(letters)

    def __aiter__(self):
        return self

    async def __anext__(self):
        await asyncio.sleep(0)
        for letter in self.letters:
            return letter
        raise StopAsyncIteration


@pytest.mark.parametrize('goes_on', [True, False])
@on_loops
async def test_a_close_frame_between_the_fragments_that_are_sent(goes_on):
    async def letters():
        yield 'a'
        await sent.wait()
        await turns(10)
        if goes_on:
            yield 'b'

    async def script(wire):
        assert await wire.frame() == (1, b'a')
        await wire.send(frame(CLOSE, closing(1008)))
        sent.set()
        assert await wire.frame() == (CLOSE, closing(1008))

    sent = asyncio.Event()
    async with serving(script) as (request, url, _):
        async with websocket(request, url) as ws:
            with pytest.raises(WebSocketClosedError, match='1008'):
                await ws.send(letters())


@on_loops
async def test_fragments_of_any_async_iterator():
    async with serving() as (request, url, _):
        async with websocket(request, url) as ws:
            await ws.send(Letters('abc'))
            assert await ws.receive() == 'abc'


@on_loops
async def test_what_is_no_message_is_refused_and_nothing_is_sent():
    async with serving() as (request, url, _):
        async with websocket(request, url) as ws:
            for bad in None, 1, {'a': 'b'}:
                with pytest.raises(TypeError) as caught:
                    await ws.send(bad)
                assert str(caught.value) == (
                    'a message must be str or bytes, or an iterable of one of them, '
                    f'got {type(bad).__name__}')
            for bad in '\ud800', [1], ['\ud800']:
                with pytest.raises((UnicodeEncodeError, TypeError)):
                    await ws.send(bad)
            await ws.send('good')
            assert await ws.receive() == 'good'


@on_loops
async def test_messages_of_many_tasks_do_not_mix():
    async def two_letters(letter):
        yield letter
        await turns(3)
        yield letter

    async def script(wire):
        while len(frames) < 20:
            frames.append(await wire.frame())
        await wire.send(NORMAL)

    frames = []
    async with serving(script) as (request, url, _):
        async with websocket(request, url) as ws:
            async with asyncio.TaskGroup() as group:
                for letter in 'abcde':
                    group.create_task(ws.send(two_letters(letter)))
                    group.create_task(ws.send(letter.upper() * 100_000))
            assert [message async for message in ws] == []
    whole, cut = [], []
    for first, payload in frames:
        if first == TEXT:
            assert not cut
            whole.append(payload)
        else:
            cut.append(payload)
            if first == CONTINUATION:
                assert len(set(cut)) == 2
                cut.clear()
    assert whole == [letter * 100_000 for letter in (b'A', b'B', b'C', b'D', b'E')]


@on_loops
async def test_a_peer_that_sends_much_before_it_reads_is_read_from():
    """It would wait for us as we wait for it."""
    async def script(wire):
        await wire.send(frame(PING, b'busy') + frame(BINARY, bytes(900_000)))
        assert await wire.frame() == (BINARY, HUGE)
        assert await wire.frame() == (PONG, b'busy')
        await wire.send(NORMAL)

    async with serving(script, get_sock=narrow_sock) as (request, url, _):
        async with websocket(request, url) as ws:
            await ws.send(HUGE)
            assert [len(message) async for message in ws] == [900_000]


@on_loops
async def test_a_task_that_only_sends_answers_pings():
    async def script(wire):
        await wire.frame()
        await wire.send(frame(PING, b'a'))
        while (got := await wire.frame()) != (PONG, b'a'):
            assert got == (TEXT, b'x')
        ponged.append(True)
        await wire.send(frame(CLOSE, closing(4000, 'enough')))

    ponged = []
    async with serving(script) as (request, url, _):
        async with websocket(request, url) as ws:
            with pytest.raises(WebSocketClosedError) as caught:
                while True:
                    await ws.send('x')
                    await turns(5)
    assert ponged
    assert (caught.value.code, caught.value.reason) == (4000, 'enough')


# ------------------------------------------------------------------------------ receiving


@on_loops
async def test_many_messages_of_one_read_come_in_order():
    async def script(wire):
        await wire.send(b''.join(frame(BINARY, b'%d' % number) for number in range(50_000))
                        + NORMAL)
        await wire.frame()

    async with serving(script) as (request, url, _):
        async with websocket(request, url) as ws:
            assert [int(message) async for message in ws] == list(range(50_000))


@on_loops
async def test_a_cancelled_receive_loses_nothing():
    async def script(wire):
        for number in range(100):
            await wire.send(*cut_into_bytes(frame(TEXT, b'%d' % number)))
        await wire.send(NORMAL)

    received, attempts = [], itertools.count()
    async with serving(script) as (request, url, _):
        async with websocket(request, url) as ws:
            while len(received) < 100:
                task = asyncio.ensure_future(ws.receive())
                await turns(next(attempts) % 5)
                # It is cancelled before it begins, while it waits, and when it has been woken.
                if task.cancel('message'):
                    try:
                        received.append(await task)
                    except asyncio.CancelledError as error:
                        assert error.args in ((), ('message',))
                else:
                    received.append(task.result())
            assert [message async for message in ws] == []
    assert received == [str(number) for number in range(100)]


@pytest.mark.parametrize('method', [WebSocket.receive, WebSocket.ping])
@on_loops
async def test_what_is_cancelled_ends_at_once_and_tells_its_message(method):
    async with serving() as (request, url, _):
        async with websocket(request, url) as ws:
            for args in ('why',), ():
                task = asyncio.ensure_future(method(ws))
                await turns(3)
                assert task.cancel(*args)
                assert task.cancel('too late')
                with pytest.raises(asyncio.CancelledError) as caught:
                    await task
                assert caught.value.args in (args, ('too late',))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await ws.receive()
            assert asyncio.current_task().cancelling() == 0
            await ws.send('still there')
            assert await ws.receive() == 'still there'


@on_loops
async def test_a_second_task_that_receives_is_refused():
    async with serving() as (request, url, _):
        async with websocket(request, url) as ws:
            first = asyncio.ensure_future(ws.receive())
            await turns(3)
            with pytest.raises(RuntimeError) as caught:
                await ws.receive()
            assert str(caught.value) == 'another task is receiving from this WebSocket'
            with pytest.raises(RuntimeError):
                await anext(ws)
            await ws.send('x')
            assert await first == 'x'


@on_loops
async def test_one_task_receives_while_another_sends():
    async def send_all(ws):
        for number in range(300):
            await ws.send(b'%d' % number + bytes(50_000))

    async with serving() as (request, url, _):
        async with websocket(request, url) as ws:
            async with asyncio.TaskGroup() as group:
                group.create_task(send_all(ws))
                for number in range(300):
                    assert (await ws.receive()).rstrip(b'\0') == (b'%d' % number).rstrip(b'\0')


@on_loops
async def test_who_pings_reads_on_when_the_receive_beside_it_is_cancelled():
    async def script(wire):
        pings.append(await wire.frame())
        await event.wait()
        await wire.send(frame(TEXT, b'kept') + frame(PONG, b'a'))
        await wire.echo()

    event, pings = asyncio.Event(), []
    async with serving(script) as (request, url, _):
        async with websocket(request, url) as ws:
            receiving = asyncio.ensure_future(ws.receive())
            await turns(3)
            pinging = asyncio.ensure_future(ws.ping(b'a'))
            await until(lambda: pings)
            receiving.cancel('why')
            with pytest.raises(asyncio.CancelledError) as caught:
                await receiving
            assert caught.value.args == ('why',)
            event.set()
            assert await pinging > 0
            assert await ws.receive() == 'kept'
    assert pings == [(PING, b'a')]


@pytest.mark.parametrize('cancelled', ['receive', 'send', None])
@on_loops
async def test_a_send_that_waits_beside_a_receive_that_began_before_it(cancelled):
    """The peer goes on when its ping is answered, which has to wait for the send."""
    async def script(wire):
        await event.wait()
        await wire.send(frame(PING, b'a') + frame(TEXT, b'first'))
        frames.extend([await wire.frame(), await wire.frame()])
        await wire.send(frame(TEXT, b'second'))
        await wire.echo()

    event, frames = asyncio.Event(), []
    async with serving(script, get_sock=narrow_sock) as (request, url, _):
        async with websocket(request, url) as ws:
            tasks = {'receive': asyncio.ensure_future(ws.receive())}
            await turns(3)
            tasks['send'] = asyncio.ensure_future(ws.send(HUGE))
            await turns(3)
            if cancelled is not None:
                task = tasks.pop(cancelled)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            event.set()
            assert await (tasks['receive'] if 'receive' in tasks else ws.receive()) == 'first'
            assert await ws.receive() == 'second'
            if 'send' in tasks:
                await tasks['send']
    assert frames == [(BINARY, HUGE), (PONG, b'a')]


@on_loops
async def test_the_end_of_the_connection_reaches_all_who_wait():
    async def script(wire):
        pings.append(await wire.frame())

    pings = []
    async with serving(script) as (request, url, _):
        async with websocket(request, url) as ws:
            tasks = [asyncio.ensure_future(ws.receive())]
            await turns(3)
            tasks.append(asyncio.ensure_future(ws.ping()))
            for task in tasks:
                with pytest.raises(WebSocketClosedError) as caught:
                    await task
                assert str(caught.value) == f'{origin(url)}, the connection was lost'
                assert caught.value.code == 1006
    assert len(pings) == 1


@on_loops
async def test_pings_are_answered_in_order_while_nobody_sends():
    async def script(wire):
        await wire.send(b''.join(frame(PING, b'%d' % number) for number in range(20)))
        pongs.extend([await wire.frame() for _ in range(20)])
        await wire.send(frame(TEXT, b'x'))
        await wire.echo()

    pongs = []
    async with serving(script) as (request, url, _):
        async with websocket(request, url) as ws:
            assert await ws.receive() == 'x'
    assert pongs == [(PONG, b'%d' % number) for number in range(20)]


@on_loops
async def test_a_cancelled_send_is_finished_by_what_is_called_next():
    async def script(wire):
        await event.wait()
        frames.extend([await wire.frame(), await wire.frame()])
        await wire.send(frame(TEXT, b'thanks'))
        await wire.echo()

    event, frames = asyncio.Event(), []
    async with serving(script, get_sock=narrow_sock) as (request, url, _):
        async with websocket(request, url) as ws:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await ws.send(HUGE)
            event.set()
            next_one = asyncio.ensure_future(ws.send('next'))
            assert await ws.receive() == 'thanks'
            await next_one
    assert frames == [(BINARY, HUGE), (TEXT, b'next')]


@on_loops
async def test_who_receives_goes_on_with_a_send_that_was_cancelled():
    async def script(wire):
        await event.wait()
        frames.append(await wire.frame())
        await wire.send(frame(TEXT, b'thanks'))
        await wire.echo()

    event, frames = asyncio.Event(), []
    async with serving(script, get_sock=narrow_sock) as (request, url, _):
        async with websocket(request, url) as ws:
            receiving = asyncio.ensure_future(ws.receive())
            await turns(3)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await ws.send(HUGE)
            event.set()
            assert await receiving == 'thanks'
    assert frames == [(BINARY, HUGE)]


@on_loops
async def test_of_the_pongs_that_wait_the_last_one_is_sent():
    async def script(wire):
        await event.wait()
        await wire.send(b''.join(frame(PING, b'%d' % number) for number in range(1000)))
        await wire.send(frame(TEXT, b'go'))
        first = await wire.frame()
        frames.extend([first[0], await wire.frame()])
        await wire.echo()

    event, frames = asyncio.Event(), []
    async with serving(script, get_sock=narrow_sock) as (request, url, _):
        async with websocket(request, url) as ws:
            sending = asyncio.ensure_future(ws.send(HUGE))
            await turns(10)
            event.set()
            assert await ws.receive() == 'go'
            await sending
            await ws.send('end')
            assert await ws.receive() == 'end'
    assert frames == [BINARY, (PONG, b'999')]


@on_loops
async def test_messages_are_kept_up_to_a_limit_while_nobody_receives():
    async def script(wire):
        for number in range(40):
            await wire.peer.send(frame(BINARY, bytes([number]) * 100_000))
        await wire.send(frame(PING, b'late'))
        await wire.echo()

    async with serving(script) as (request, url, _):
        async with websocket(request, url) as ws:
            with pytest.raises(HttpDataError) as caught:
                await ws.ping(timeout=0.1)
            kept = int(re.search(r'\((\d+) messages wait to be received\)$',
                                 str(caught.value))[1])
            assert kept == 11
            # With room again, it goes on.
            pinging = asyncio.ensure_future(ws.ping())
            await turns(3)
            for number in range(40):
                assert await ws.receive() == bytes([number]) * 100_000
            receiving = asyncio.ensure_future(ws.receive())
            await turns(1)
            receiving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await receiving
            pinging.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pinging


# --------------------------------------------------------------------- pings


class Ponging:
    """A script that answers pings in the given way, and notes them."""

    def __init__(self, answer):
        self.answer = answer
        self.pings = []

    async def __call__(self, wire):
        while True:
            first, payload = await wire.frame()
            if first == PING:
                self.pings.append(payload)
                await wire.send(*self.answer(payload))
            elif first == CLOSE:
                await wire.send(frame(CLOSE, payload))
                return


@on_loops
async def test_a_ping_waits_for_its_pong():
    script = Ponging(lambda payload: [
        frame(TEXT, b'before'), frame(PONG, b'another'), frame(PONG, payload),
        frame(TEXT, b'after')])
    async with serving(script) as (request, url, _):
        async with websocket(request, url) as ws:
            assert 0 < await ws.ping() < 10
            assert await ws.ping(b'mine') > 0
            assert [await ws.receive() for _ in range(4)] == ['before', 'after'] * 2
    assert script.pings[1] == b'mine'
    assert len(script.pings[0]) == 4


@on_loops
async def test_a_pong_answers_the_pings_before_its_own():
    script = Ponging(lambda payload: [frame(PONG, payload)] if payload == b'c' else [])
    async with serving(script) as (request, url, _):
        async with websocket(request, url) as ws:
            tasks = [asyncio.ensure_future(ws.ping(data)) for data in (b'a', b'b', b'c', b'd')]
            await asyncio.gather(*tasks[:3])
            assert not tasks[3].done()
            assert repr(ws) == f'<WebSocket {origin(url)} open, 0 messages wait, 1 pings>'
            tasks[3].cancel()
            await asyncio.wait(tasks[3:])
            assert repr(ws) == f'<WebSocket {origin(url)} open, 0 messages wait, 0 pings>'


@on_clock
async def test_a_ping_that_is_not_answered_in_time():
    script = Ponging(lambda payload: [])
    async with serving(script) as (request, url, _):
        async with websocket(request, url) as ws:
            for options, seconds in ({}, 10), ({'timeout': 3}, 3), ({'timeout': 0.5}, 0.5):
                task = asyncio.ensure_future(ws.ping(**options))
                await passing(seconds - 0.1)
                assert not task.done()
                await passing(0.2)
                with pytest.raises(HttpDataError) as caught:
                    await task
                assert str(caught.value) == \
                    f'{origin(url)}, no pong came within {seconds} seconds'
                assert isinstance(caught.value.__cause__, TimeoutError)
                assert (caught.value.response_started, caught.value.phase) == (True, 'content')
            await ws.send('it is still open')


@on_loops
async def test_a_ping_while_another_task_receives():
    script = Ponging(lambda payload: [frame(PONG, payload)])
    async with serving(script) as (request, url, _):
        async with websocket(request, url) as ws:
            receiving = asyncio.ensure_future(ws.receive())
            await turns(3)
            for _ in range(3):
                await ws.ping()
            receiving.cancel()
            await asyncio.wait([receiving])


@on_loops
async def test_a_ping_that_a_close_frame_answers():
    script = Ponging(lambda payload: [frame(CLOSE, closing(1001))])
    async with serving(script) as (request, url, _):
        async with websocket(request, url) as ws:
            with pytest.raises(WebSocketClosedError, match='the peer closed the WebSocket: 1001'):
                await ws.ping()


@on_loops
async def test_bad_data_of_a_ping():
    async with serving() as (request, url, _):
        async with websocket(request, url) as ws:
            for bad in 'text', bytes(126):
                with pytest.raises(ValueError, match='data must be at most 125 bytes'):
                    await ws.ping(bad)


# ------------------------------------------------------------------------- with other layers


async def get_token():
    return next(TOKENS)


async def get_credentials():
    return 'id', 'secret', ()


TOKENS = itertools.cycle(['old', 'new'])
BASIC = 'Basic dXNlcjpwYXNzd29yZA=='


class Guard:
    """A script that answers requests by a function, and accepts a WebSocket when it says so."""

    def __init__(self, answer, *fields):
        self.answer = answer
        self.accepting = Accepting(Wire.echo, *fields)
        self.heads = []

    async def __call__(self, peer):
        while True:
            asked = await peer.read_head()
            self.heads.append(asked)
            answer = self.answer(asked, len(self.heads))
            if answer is True:
                await peer.send(accepting_head(asked, *self.accepting.fields))
                await Wire(peer).echo()
                return
            if answer is None:
                return
            await peer.send(answer)


def challenged(asked, wanted, challenge):
    given = value(asked, b'authorization') or b''
    return True if given.startswith(wanted) else response(
        401, b'', b'www-authenticate: ' + challenge)


def once(answer):
    return lambda asked, number: answer if number == 1 else True


# What is around `request`, what the server answers before it accepts, and the fields that come
# with the 101.
LAYERS = {
    'cookies': (lambda request: with_cookies(request, CookieJar()),
                lambda asked, number: value(asked, b'cookie') == b'a=b' or response(
                    302, b'', b'set-cookie: a=b', b'location: /')),
    'redirect': (redirectable, once(response(302, b'', b'location: /there'))),
    'redirect to another origin': (
        redirectable, once(response(307, b'', b'location: http://b.example/'))),
    'retry': (lambda request: retry(request, code_intervals=((b'503', (0,)),)),
              once(response(503, b'later'))),
    'retry of a lost connection': (
        lambda request: retry(request, max_total=20, max_buffered=1000), once(None)),
    'decompressed': (decompressed, lambda asked, number: True),
    'basic': (lambda request: basic(request, 'user', 'password'),
              lambda asked, number: challenged(asked, BASIC.encode(), b'Basic')),
    'bearer': (lambda request: bearer(request, get_token),
               lambda asked, number: challenged(asked, b'Bearer new', b'Bearer')),
    'digest': (
        lambda request: digest(request, 'user', 'password'),
        lambda asked, number: challenged(asked, b'Digest ', b'Digest realm="r", nonce="n"')),
    'sigv4': (lambda request: signed(request, get_credentials, 'execute-api', 'eu-west-2'),
              lambda asked, number: challenged(asked, b'AWS4-HMAC-SHA256 ', b'AWS')),
    'sigv4 without the body': (
        lambda request: signed_without_body(request, get_credentials, 'iot', 'eu-west-2'),
        lambda asked, number: challenged(asked, b'AWS4-HMAC-SHA256 ', b'AWS')),
}


@pytest.mark.parametrize('name', LAYERS)
@on_loops
async def test_a_layer_passes_a_websocket_on(name):
    layer, answer = LAYERS[name]
    if name == 'cookies':
        def layered(request):
            return redirectable(layer(request))
    else:
        layered = layer
    script = Guard(answer, b'content-encoding: gzip', b'set-cookie: c=d')
    async with Server(script) as server:
        async with pool(get_connection=connecting_to(http=server.port)) as request:
            async with websocket(layered(request), 'ws://a.example/x?y') as ws:
                await ws.send('hello')
                assert await ws.receive() == 'hello'
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await ws.receive()
                await ws.send(bytes(500_000))
                assert len(await ws.receive()) == 500_000
            assert ws.close_code == 1000
    signed_fields = re.search(rb'SignedHeaders=([^,]*)', script.heads[-1])
    if signed_fields is not None:
        # Those that are changed on the way, for HTTP/2 for example, are not signed.
        assert b'sec-websocket-key' not in signed_fields[1].split(b';')


@on_loops
async def test_all_layers_at_once():
    answers = [response(503), response(302, b'', b'location: http://a.example/x',
                                       b'set-cookie: a=b'), True]
    script = Guard(lambda asked, number: answers[number - 1], DEFLATE)
    jar = CookieJar()
    async with Server(script) as server:
        async with pool(get_connection=connecting_to(http=server.port)) as request:
            request = basic(request, 'user', 'password')
            request = with_cookies(request, jar)
            request = retry(request, code_intervals=((b'503', (0,)),))
            request = decompressed(redirectable(request))
            async with websocket(request, 'ws://a.example/', compression=True) as ws:
                await ws.send('hello')
                assert await ws.receive() == 'hello'
    assert values_of(script.heads[-1], b'cookie') == [b'a=b']
    assert [cookie.name for cookie in jar] == ['a']


@on_loops
async def test_another_origin_gets_no_subprotocols():
    script = Guard(once(response(307, b'', b'location: http://b.example/')))
    async with Server(script) as server:
        async with pool(get_connection=connecting_to(http=server.port)) as request:
            async with websocket(redirectable(request), 'ws://a.example/', ('token.x',)) as ws:
                assert ws.subprotocol is None
    assert [values_of(asked, b'sec-websocket-protocol') for asked in script.heads] == [
        [b'token.x'], []]


BLOCKS = python_blocks(pathlib.Path(__file__).with_name('README.md'))


@pytest.mark.parametrize('block, printed', list(zip(BLOCKS, [
    'one\ntwo\n1000\n', 'one\ntwo\n', 'hello\n'], strict=True)))
def test_the_examples_of_the_readme(block, printed, capsys):
    async def script(wire):
        if 'one' in printed:
            await wire.send(frame(TEXT, b'one'), frame(TEXT, b'two'), NORMAL)
        await wire.echo()

    with internet(Accepting(script)):
        run_block(block)
    assert capsys.readouterr().out == printed


# ------------------------------------------------------------------------------ what is shown


@on_loops
async def test_what_a_debugger_shows():
    async with serving() as (request, url, _):
        async with websocket(request, url) as ws:
            assert repr(ws) == f'<WebSocket {origin(url)} open, 0 messages wait, 0 pings>'


def test_masks_without_the_speedups_of_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, 'websockets.speedups', None)
    spec = importlib.util.spec_from_file_location('slow', lowhaio_websocket.__file__)
    slow = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(slow)
    assert slow.apply_mask is not lowhaio_websocket.apply_mask
    for length in range(20):
        data = bytes(range(length))
        assert slow.apply_mask(data, b'abcd') == lowhaio_websocket.apply_mask(data, b'abcd')


# -------------------------------------------------------------------------------- closing


class Ending:
    """A script that notes the client's close frame, and answers it with these frames."""

    def __init__(self, *answers, waits=False):
        self.answers = answers
        self.waits = waits
        self.frames = []
        self.is_closed = False

    async def __call__(self, wire):
        while True:
            first, payload = await wire.frame()
            self.frames.append((first, payload))
            if first == CLOSE:
                break
        for answer in self.answers:
            await wire.send(answer)
        if self.waits:
            await wire.peer.closed()
            self.is_closed = True


@on_loops
async def test_the_end_of_the_block_closes():
    script = Ending(NORMAL)
    async with serving(script) as (request, url, _):
        async with websocket(request, url) as ws:
            assert (ws.close_code, ws.close_reason) == (None, None)
    assert script.frames == [(CLOSE, closing(1000))]
    assert (ws.close_code, ws.close_reason) == (1000, '')


@on_loops
async def test_close_with_a_code_and_a_reason():
    script = Ending(frame(TEXT, b'late'), frame(CLOSE, closing(4001, 'bye')))
    async with serving(script) as (request, url, _):
        async with websocket(request, url) as ws:
            await ws.close(4000, 'gö')
            assert script.frames == [(CLOSE, closing(4000, 'gö'))]
            assert (ws.close_code, ws.close_reason) == (4001, 'bye')
            # What came before its close frame is there.
            assert await ws.receive() == 'late'
            with pytest.raises(WebSocketClosedError) as caught:
                await ws.receive()
            assert str(caught.value) == f"{origin(url)}, the peer closed the WebSocket: 4001 'bye'"
            await ws.close()


@pytest.mark.parametrize('code, reason', [
    (999, ''), (1005, ''), (1006, ''), (1015, ''), (5000, ''), (1000, 'x' * 124)])
@on_loops
async def test_a_bad_code_or_reason_closes_nothing(code, reason):
    async with serving() as (request, url, _):
        async with websocket(request, url) as ws:
            with pytest.raises(ValueError, match='code or reason is not allowed: '):
                await ws.close(code, reason)
            await ws.send('open')
            assert await ws.receive() == 'open'


@on_loops
async def test_close_while_another_task_receives():
    script = Ending(frame(TEXT, b'late'), NORMAL)
    async with serving(script) as (request, url, _):
        async with websocket(request, url) as ws:
            async def receive_all():
                return [message async for message in ws]

            receiving = asyncio.ensure_future(receive_all())
            await turns(3)
            await ws.close()
            assert await receiving == ['late']


@on_loops
async def test_who_receives_hears_of_a_close_that_the_peer_does_not_answer():
    script = Ending(waits=True)
    async with serving(script) as (request, url, _):
        async with websocket(request, url, close_timeout=0.05) as ws:
            receiving = asyncio.ensure_future(ws.receive())
            await turns(3)
            await ws.close()
            with pytest.raises(WebSocketClosedError, match='the WebSocket was closed: 1000$'):
                await receiving


@on_clock
async def test_a_peer_that_does_not_close_is_not_waited_for():
    script = Ending(waits=True)
    async with serving(script) as (request, url, _):
        ws = await websocket(request, url).__aenter__()
        closing_it = asyncio.ensure_future(ws.close())
        await until(lambda: script.frames)
        await passing(9.9)
        assert not closing_it.done()
        await passing(0.2)
        await closing_it
        assert (ws.close_code, ws.close_reason) == (1000, '')
        await until(lambda: script.is_closed)


@on_clock
async def test_the_end_of_the_connection_is_waited_for_for_a_second():
    script = Ending(NORMAL, waits=True)
    async with serving(script) as (request, url, _):
        ws = await websocket(request, url).__aenter__()
        closing_it = asyncio.ensure_future(ws.close())
        await until(lambda: script.frames)
        await passing(0.9)
        assert not closing_it.done()
        await passing(0.2)
        await closing_it
        await until(lambda: script.is_closed)


@on_clock
async def test_a_peer_that_floods_instead_of_closing():
    async def script(wire):
        await wire.frame()
        while not wire.peer.writer.is_closing():
            await wire.send(frame(BINARY, bytes(200_000)))

    async with serving(script) as (request, url, accepting):
        async with websocket(request, url) as ws:
            closing_it = asyncio.ensure_future(ws.close())
            await until(lambda: ' 6 messages wait' in repr(ws))
            await passing(10.1)
            await closing_it
            await until(lambda: accepting.ended)
        assert sum([1 for _ in range(6) if await ws.receive()]) == 6
        with pytest.raises(WebSocketClosedError, match='the WebSocket was closed: 1000'):
            await ws.receive()


@pytest.mark.parametrize('raised, code', [
    (KeyError('x'), 1011), (asyncio.CancelledError(), 1001), (GeneratorExit(), 1001)])
@on_clock
async def test_an_exception_in_the_block_closes_within_a_second(raised, code):
    async def main():
        async with websocket(request, url):
            raise raised

    script = Ending(waits=True)
    async with serving(script) as (request, url, _):
        task = asyncio.ensure_future(main())
        await until(lambda: script.frames)
        await passing(0.9)
        assert not task.done()
        await passing(0.2)
        await asyncio.wait([task])
        if isinstance(raised, asyncio.CancelledError):
            assert task.cancelled()
        else:
            assert task.exception() is raised
        await until(lambda: script.is_closed)
    assert script.frames == [(CLOSE, closing(code))]


@on_loops
async def test_a_block_that_is_cancelled():
    async def main():
        async with websocket(request, url) as ws:
            waits.set()
            await ws.receive()

    waits = asyncio.Event()
    script = Ending(frame(CLOSE, closing(1001)))
    async with serving(script) as (request, url, _):
        task = asyncio.ensure_future(main())
        await waits.wait()
        await turns(3)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
    assert script.frames == [(CLOSE, closing(1001))]


@on_loops
async def test_a_close_that_is_cancelled_closes_the_connection():
    script = Ending(waits=True)
    async with serving(script) as (request, url, _):
        ws = await websocket(request, url).__aenter__()
        task = asyncio.ensure_future(ws.close())
        await until(lambda: script.frames)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        await until(lambda: script.is_closed)
        with pytest.raises(WebSocketClosedError, match='the WebSocket was closed: 1000$'):
            await ws.send('x')


@on_loops
async def test_a_close_behind_a_send_that_the_peer_does_not_take():
    async def script(wire):
        await forever()

    async with serving(script, get_sock=narrow_sock) as (request, url, _):
        async with websocket(request, url, close_timeout=0.05) as ws:
            sending = asyncio.ensure_future(ws.send(HUGE))
            await turns(5)
        with pytest.raises(WebSocketClosedError, match='the WebSocket was closed: 1000'):
            await sending


@on_clock
async def test_a_peer_that_takes_nothing_is_a_lost_connection():
    async def script(wire):
        await forever()

    async with serving(script, get_sock=narrow_sock) as (request, url, _):
        async with websocket(request, url) as ws:
            sending = asyncio.ensure_future(ws.send(HUGE))
            receiving = asyncio.ensure_future(ws.receive())
            await passing(10.5)
            for task in sending, receiving:
                await is_lost(task)


@on_clock
async def test_an_idle_websocket_stays_open():
    async def script(wire):
        await event.wait()
        await wire.send(frame(TEXT, b'at last'))
        await wire.echo()

    event = asyncio.Event()
    async with serving(script) as (request, url, _):
        async with websocket(request, url) as ws:
            receiving = asyncio.ensure_future(ws.receive())
            await passing(3600)
            assert not receiving.done()
            event.set()
            assert await receiving == 'at last'


@on_loops
async def test_one_that_is_dropped_closes_its_connection():
    async def script(wire):
        await wire.frame()
        await wire.peer.closed()

    async with serving(script) as (request, url, accepting):
        ws = await websocket(request, url).__aenter__()
        await ws.send('x')
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await ws.receive()
        del ws
        gc.collect()
        await until(lambda: accepting.ended)
