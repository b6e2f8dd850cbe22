"""WebSockets (RFC 6455) over the `request` of lowhaio.

::

    request, close = Pool()
    async with websocket(request, 'wss://example.com/') as ws:
        await ws.send('hello')
        async for message in ws:
            ...

From top to bottom:

    websocket       checks the arguments
    Opening         makes the request, checks the answer, and closes at the end of the block
    WebSocket       send, receive, ping and close: what each of them waits for
    Frames          finds messages in bytes, and makes frames of messages
    step            goes on with a read or a send of the response body that has begun
    Waiting         waits for both, and leaves them alone if its task is cancelled

The protocol is that of `websockets.client.ClientProtocol`, which knows nothing of sockets.
`Frames` asks it about everything but whole data frames that are neither compressed nor a part of a
message, which it makes and takes apart itself.

No task is created. Whoever waits for something, to send or to receive, goes on with all that has
begun: it reads, answers pings, and writes what others have left behind.
"""

from __future__ import annotations

import asyncio
import codecs
import logging
import os
import re
import struct
from asyncio import CancelledError, get_running_loop
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Generator
from collections.abc import Iterable, Iterator, Mapping
from time import perf_counter
from types import TracebackType
from typing import Any

from lowhaio import Fields, Headers, HttpConnectionClosedError, HttpDataError, Phase
from websockets.client import ClientProtocol
from websockets.datastructures import Headers as LibraryHeaders
from websockets.exceptions import InvalidHandshake, ProtocolError
from websockets.extensions.permessage_deflate import enable_client_permessage_deflate
from websockets.frames import Frame, Opcode
from websockets.headers import build_extension
from websockets.http11 import Response as LibraryResponse
from websockets.protocol import OPEN
from websockets.uri import parse_uri

try:
    from websockets.speedups import apply_mask
except ImportError:
    from websockets.utils import apply_mask

__all__ = ['WebSocket', 'WebSocketClosedError', 'WebSocketHandshakeError',
           'WebSocketProtocolError', 'websocket']

# The default of `max_message`: bytes of a message that is received.
MAX_MESSAGE = 1024 * 1024

# Bytes of messages that are kept while nobody receives. Each message counts for more than it has,
# as even an empty one takes memory. When there are more, nothing is read until some are received.
MAX_KEPT = 1024 * 1024
COST_OF_MESSAGE = 64

# The default of `close_timeout`: seconds for the close handshake.
CLOSE_TIMEOUT = 10

# Seconds for it when the block has raised: whoever waits for the exception should have it soon.
FAILED_CLOSE_TIMEOUT = 1

# Seconds for which the peer's end of the connection is awaited after the close handshake. The side
# that closes first has to remember the connection for a while, and that is the server's part (RFC
# 6455 7.1.1).
END_TIMEOUT = 1

# The default of the `timeout` of `ping`, in seconds.
PING_TIMEOUT = 10

# Bytes of the content of an answer that is no 101, and seconds to read it, for the error.
MAX_ANSWER = 64 * 1024
ANSWER_TIMEOUT = 1

# Bytes of random numbers that are asked of the system at once, for masks of four bytes.
RANDOM_BYTES = 4096

# Codes of an end that is expected: closed, going away, and a close frame without a code (RFC 6455
# 7.4.1). A connection that is lost has none, for which the RFC has a number, too.
NORMAL_CODES = (1000, 1001, 1005)
LOST = 1006

# First bytes of frames that are whole.
TEXT, BINARY, CLOSE = 0x81, 0x82, 0x88
MESSAGES = (TEXT, BINARY)

Message = str | bytes
Fragments = Iterable[str] | Iterable[bytes] | AsyncIterable[str] | AsyncIterable[bytes]
Response = tuple[bytes, Fields, Any]
Future = asyncio.Future[Any]


# ---------------------------------------------------------------------------------- errors

class WebSocketHandshakeError(HttpDataError):
    """The server did not accept the WebSocket, or not as RFC 6455 4.1 asks."""

    response_started = True
    phase: Phase | str = Phase.HEAD

    code: bytes = b''
    """The status code of the response, as three digits."""

    headers: Fields = ()
    """Its fields, as pairs."""

    body: bytes = b''
    """The beginning of its content, up to 64 KiB. Empty if the code is 101."""


class WebSocketClosedError(HttpConnectionClosedError):
    """The WebSocket is closed, by either side, or its connection has ended."""

    response_started = True
    phase: Phase | str = Phase.CONTENT

    code: int = LOST
    """That of the peer's close frame, or else of our own. 1006 if there was neither, because the
    connection was lost; `__cause__` may tell why. See RFC 6455 7.4.1."""

    reason: str = ''
    """The text in the same close frame."""


class WebSocketProtocolError(WebSocketClosedError):
    """The peer broke the protocol, or passed `max_message`. `code` is what it was told."""


# ------------------------------------------------------------------------------- the block

# Fields that this layer sets. The caller's own would contradict them.
RESERVED = frozenset((
    b'connection', b'upgrade', b'sec-websocket-accept', b'sec-websocket-extensions',
    b'sec-websocket-key', b'sec-websocket-protocol', b'sec-websocket-version'))

# The body of an upgrade would be taken for frames.
REFUSED = ('body', 'body_args', 'body_kwargs', 'method')

# An RFC 9110 5.6.2 token.
TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")

SCHEMES = {'ws': 'http', 'wss': 'https'}

# The protocol never makes a request itself, and so never looks at this.
NOWHERE = parse_uri('ws://localhost/')

# It would log messages, and not even all of them.
SILENT = logging.getLogger('lowhaio.websocket.protocol')
SILENT.setLevel(logging.CRITICAL + 1)


def websocket(
        request: Callable[..., Awaitable[Response]], url: str,
        subprotocols: Iterable[str] = (), headers: Headers = (),
        *, max_message: int | None = MAX_MESSAGE, compression: bool = False,
        close_timeout: float = CLOSE_TIMEOUT, **kwargs: Any) -> Opening:
    """A WebSocket, for `async with websocket(request, url) as ws`.

    - `request`: that of a pool, with any layers around it.
    - `url`: begins with `ws://` or `wss://`, or with `http://` or `https://`.
    - `subprotocols`: those that are offered, the preferred ones first. `ws.subprotocol` is the one
      that the server has chosen, or None.
    - `headers`: fields that the request is sent with, as pairs of bytes. Those of the handshake
      itself are added.
    - `max_message`: how many bytes a message from the peer may have, decompressed and as UTF-8. A
      longer one ends the WebSocket with the code 1009. None stands for no limit.
    - `compression`: whether to offer permessage-deflate (RFC 7692).
    - `close_timeout`: seconds that the close handshake may take, when the block ends and in
      `ws.close()`.
    - `**kwargs`: passed on to `request`, `params` for example.

    The block gets a `WebSocket`. `async with websocket(…) as (send, receive)` gets two of its
    methods. At the end of the block, the WebSocket is closed: with the code 1000, or with 1011 or
    1001 and within a second if the block raises.

    Raises `WebSocketHandshakeError` if the server does not accept, and any `HttpError` of the
    request. Arguments that make no sense raise TypeError or ValueError at once.
    """
    if not callable(request):
        raise TypeError(f'request must be a coroutine function, got {type(request).__name__}')
    if not isinstance(url, str):
        raise TypeError(f'url must be a str, got {type(url).__name__}')
    if isinstance(subprotocols, str):
        raise TypeError('subprotocols must be several, such as a tuple, got a str')
    subprotocols = tuple(subprotocols)
    for name in subprotocols:
        if not isinstance(name, str) or not TOKEN.fullmatch(name):
            raise ValueError(f'subprotocols must be tokens, each a str, got {name!r}')
    if len(set(subprotocols)) < len(subprotocols):
        raise ValueError('subprotocols must have no name twice')
    headers = tuple(headers)
    for field, _ in headers:
        if field.lower() in RESERVED:
            raise ValueError(f'headers must not have {field!r}, which the handshake sets')
    if max_message is not None and (not isinstance(max_message, int) or max_message < 1):
        raise ValueError(
            f'max_message must be a number of bytes, 1 or more, or None, got {max_message!r}')
    if not isinstance(compression, bool):
        raise TypeError(f'compression must be a bool, got {compression!r}')
    if not isinstance(close_timeout, (int, float)) or not 0 <= close_timeout < float('inf'):
        raise ValueError(f'close_timeout must be a number, 0 or more, got {close_timeout!r}')
    for name in REFUSED:
        if name in kwargs:
            raise TypeError(f'a WebSocket has no {name}')
    return Opening(request, url, subprotocols, headers, max_message, compression,
                   close_timeout, kwargs)


class Opening:
    """What `websocket` returns: opens a WebSocket for a block, and closes it afterwards."""

    __slots__ = ('_request', '_url', '_subprotocols', '_headers', '_max_message', '_compression',
                 '_close_timeout', '_kwargs', '_opened')

    def __init__(self, request: Callable[..., Awaitable[Response]], url: str,
                 subprotocols: tuple[str, ...], headers: Fields, max_message: int | None,
                 compression: bool, close_timeout: float, kwargs: dict[str, Any]) -> None:
        self._request = request
        self._url = url
        self._subprotocols = subprotocols
        self._headers = headers
        self._max_message = max_message
        self._compression = compression
        self._close_timeout = close_timeout
        self._kwargs = kwargs
        # Inside of the block.
        self._opened: WebSocket | None = None

    def __repr__(self) -> str:
        return f'<websocket {origin_of(self._url)}>'

    async def __aenter__(self) -> WebSocket:
        if self._opened is not None:
            raise RuntimeError('this WebSocket is open: each block needs a call of websocket()')
        protocol = ClientProtocol(
            NOWHERE, state=OPEN, max_size=self._max_message, logger=SILENT,
            subprotocols=self._subprotocols or None,  # type: ignore[arg-type]
            extensions=enable_client_permessage_deflate(None) if self._compression else None)
        scheme, separator, rest = self._url.partition('://')
        code, fields, body = await self._request(
            b'GET', SCHEMES.get(scheme.lower(), scheme) + separator + rest,
            headers=(*self._headers, *handshake_fields(protocol)), **self._kwargs)
        if code != b'101':
            raise self._refusal(
                f'was answered with {code.decode()}', code, fields, await beginning(body))
        try:
            protocol.process_response(LibraryResponse(101, '', LibraryHeaders(
                (name.decode('latin-1'), value.decode('latin-1')) for name, value in fields)))
        except InvalidHandshake as cause:
            await body.aclose()
            raise self._refusal(f'failed: {cause}', code, fields, b'') from cause
        self._opened = WebSocket(body, protocol, fields, origin_of(self._url),
                                 self._close_timeout)
        return self._opened

    def _refusal(self, what: str, code: bytes, fields: Fields,
                 body: bytes) -> WebSocketHandshakeError:
        error = WebSocketHandshakeError(f'{origin_of(self._url)}, the WebSocket handshake {what}')
        error.code, error.headers, error.body = code, fields, body
        return error

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        traceback: TracebackType | None) -> None:
        opened, self._opened = self._opened, None
        assert opened is not None
        if error is None:
            await opened.close()
        else:
            # A cancellation is no failure of this program.
            await opened._close(1011 if isinstance(error, Exception) else 1001, '',
                                min(FAILED_CLOSE_TIMEOUT, self._close_timeout))


def handshake_fields(protocol: ClientProtocol) -> Iterator[tuple[bytes, bytes]]:
    """RFC 6455 4.1."""
    yield b'upgrade', b'websocket'
    yield b'connection', b'upgrade'
    yield b'sec-websocket-key', protocol.key.encode()
    yield b'sec-websocket-version', b'13'
    if protocol.available_subprotocols:
        yield b'sec-websocket-protocol', ', '.join(protocol.available_subprotocols).encode()
    if protocol.available_extensions:
        yield b'sec-websocket-extensions', build_extension([
            (factory.name, factory.get_request_params())
            for factory in protocol.available_extensions]).encode()


async def beginning(body: Any) -> bytes:
    """The first bytes of a body that is of no other use."""
    chunks, length = [], 0
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            async for chunk in body:
                chunks.append(chunk)
                length += len(chunk)
                if length >= MAX_ANSWER:
                    break
    except (HttpDataError, TimeoutError):
        pass
    finally:
        await body.aclose()
    return b''.join(chunks)[:MAX_ANSWER]


def origin_of(url: str) -> str:
    """The part of a URL that may be shown: no path, no query and no userinfo."""
    match = re.match(r'([^:/?#]+://)(?:[^/?#]*@)?([^/?#]*)', url)
    return ''.join(match.groups()) if match is not None else ''


# --------------------------------------------------------------------------- the WebSocket
#
# At most one read and one send of the body have begun, and they belong to nobody: every method
# that waits goes on with both, so that a task that only sends reads as well, and answers pings.
# Several tasks may wait for the same one. The first one that is woken takes what came of it, and
# the others look whether that was what they wait for.

class WebSocket:
    """An open WebSocket. One task may receive while others send, ping or close.

    It is also an async iterator of the messages, which ends when the peer closes with the code
    1000 or 1001, or without a code, and raises `WebSocketClosedError` otherwise.
    """

    __slots__ = ('headers', '_body', '_frames', '_origin', '_close_timeout', '_lock', '_senders',
                 '_reading', '_readable', '_writing', '_writable', '_written', '_begun',
                 '_has_ended', '_is_receiving', '_waiters', '__weakref__')

    def __init__(self, body: Any, protocol: ClientProtocol, headers: Fields, origin: str,
                 close_timeout: float) -> None:
        self.headers = headers
        self._body = body
        self._frames = Frames(protocol)
        self._origin = origin
        self._close_timeout = close_timeout
        # Held while a message is sent, so that the frames of two messages do not mix.
        self._lock = asyncio.Lock()
        # How many tasks hold it or wait for it. A message that can be sent at once needs no lock.
        self._senders = 0
        # The read and the send that have begun, and what they wait for. If that is None, they only
        # let other tasks run.
        self._reading: Any = None
        self._readable: Future | None = None
        self._writing: Any = None
        self._writable: Future | None = None
        # How many of the frames that were queued have been handed to the kernel, and how many will
        # have been after the send that has begun.
        self._written = self._begun = 0
        # The connection has ended, so nothing more can be read or written.
        self._has_ended = False
        self._is_receiving = False
        self._waiters: list[Waiting] = []

    def __repr__(self) -> str:
        frames = self._frames
        state = 'has ended' if self._has_ended else 'open' if frames.is_open else 'closing'
        return (f'<WebSocket {self._origin} {state}, {len(frames.messages)} messages wait, '
                f'{len(frames.pings)} pings>')

    def __iter__(self) -> Iterator[Any]:
        """For `as (send, receive)`."""
        return iter((self.send, self.receive))

    @property
    def subprotocol(self) -> str | None:
        """The one that the server has chosen of those that were offered, or None."""
        return self._frames.protocol.subprotocol

    @property
    def close_code(self) -> int | None:
        """Why the WebSocket has ended, as `WebSocketClosedError.code`. None while it is open."""
        return None if self._frames.is_open else self._frames.closed_with()[0]

    @property
    def close_reason(self) -> str | None:
        """The text that came with the code. None while it is open."""
        return None if self._frames.is_open else self._frames.closed_with()[1]

    # Receiving

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        try:
            return await self.receive()
        except WebSocketClosedError as closed:
            if closed.code in NORMAL_CODES and type(closed) is WebSocketClosedError:
                raise StopAsyncIteration from None
            raise

    async def receive(self) -> Message:
        """Return the next message: a str or bytes.

        Raises `WebSocketClosedError` after the last one. If this is cancelled, nothing is lost.
        Raises RuntimeError if another task is receiving.
        """
        if self._is_receiving:
            raise RuntimeError('another task is receiving from this WebSocket')
        frames = self._frames
        messages = frames.messages
        if not messages:
            self._is_receiving = True
            try:
                while not messages:
                    if frames.is_over or self._has_ended:
                        raise self._closed()
                    if self._step():
                        continue
                    if self._writing is not None or self._readable is None:
                        await self._wait()
                        continue
                    try:
                        await self._readable
                    except Exception:
                        # So the read has failed, which the next step finds.
                        continue
            finally:
                self._is_receiving = False
        message = messages.popleft()
        frames.kept -= len(message) + COST_OF_MESSAGE
        if self._waiters and self._reading is None:
            # They may wait for the room that there is now.
            self._wake_waiters()
        return message

    # Sending

    async def send(self, message: Message | Fragments) -> None:
        """Send a message: a str, bytes, or the fragments of one.

        Fragments are an iterable or an async iterable of str, or of bytes. Each of them is sent
        as soon as it is there. Other tasks that send wait until the whole message has been sent.

        This returns once the message has been handed to the kernel. While it waits for that, it
        reads, and keeps messages for `receive`. If it is cancelled, a frame that has begun is
        finished by what is called next, and a message whose fragments are not complete closes the
        WebSocket with the code 1011. Raises `WebSocketClosedError` if it is closed.
        """
        if isinstance(message, str):
            first, data = TEXT, message.encode()
        elif isinstance(message, (bytes, bytearray, memoryview)):
            first, data = BINARY, message  # type: ignore[assignment]
        else:
            await self._in_turn(self._send_fragments, iterator_of(message))
            return
        if self._senders:
            await self._in_turn(self._send_frame, self._frames.queue_message, first, data)
            return
        # A close frame may have come, or a ping, while nobody waited.
        self._step()
        frames = self._frames
        if not frames.is_open:
            raise self._closed()
        if frames.is_plain and self._writing is None and not frames.output and not frames.pongs:
            frames.queued = ticket = frames.queued + 1
            self._begin_to_write(frames.make_frame(first, data))
        else:
            ticket = frames.queue_message(first, data)
            self._write()
        if self._written < ticket:
            await self._in_turn(self._written_until, ticket)

    async def _in_turn(self, send: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Messages go out one after the other, in the order of the calls."""
        self._senders += 1
        try:
            async with self._lock:
                await send(*args)
        finally:
            self._senders -= 1

    async def _send_fragments(self, chunks: AsyncIterator[Any]) -> None:
        kind: Any = None
        try:
            async for chunk in chunks:
                first = kind is None
                if first:
                    kind = str if isinstance(chunk, str) else (bytes, bytearray, memoryview)
                if not isinstance(chunk, kind):
                    raise TypeError('the fragments of a message must all be str, or all be bytes, '
                                    f'got {type(chunk).__name__}')
                await self._send_frame(self._frames.queue_fragment, chunk, first, False)
            if kind is not None:
                await self._send_frame(self._frames.queue_fragment, b'', False, True)
        except BaseException:
            # Without its end, nothing but a close frame can follow.
            if self._frames.is_open and self._frames.protocol.expect_continuation_frame:
                self._frames.queue_close(1011, 'a message was cut short')
                self._step()
            raise
        finally:
            if hasattr(chunks, 'aclose'):
                await chunks.aclose()

    async def _send_frame(self, queue: Callable[..., int], *args: Any) -> None:
        self._step()
        if not self._frames.is_open:
            raise self._closed()
        ticket = queue(*args)
        self._write()
        await self._written_until(ticket)

    async def _written_until(self, ticket: int) -> None:
        """Wait until the frame, and so all those before it, have been handed to the kernel."""
        while self._written < ticket:
            if self._has_ended:
                raise self._closed()
            if not self._step():
                await self._wait()

    # Pinging and closing

    async def ping(self, data: bytes | None = None, timeout: float = PING_TIMEOUT) -> float:
        """Send a ping, wait for its pong, and return the seconds that it took.

        - `data`: at most 125 bytes that the peer sends back. None stands for random ones.
        - `timeout`: seconds. When they have passed, an `HttpDataError` is raised, whose cause is a
          TimeoutError, and the WebSocket stays open.

        While it waits, it reads. Messages are kept for `receive`, up to 1 MiB of them. With more,
        it waits until another task has received some.
        """
        if data is None:
            data = os.urandom(4)
        if not isinstance(data, bytes) or len(data) > 125:
            raise ValueError('data must be at most 125 bytes')
        self._step()
        frames = self._frames
        if not frames.is_open:
            raise self._closed()
        start = perf_counter()
        ping = frames.queue_ping(data)
        try:
            async with asyncio.timeout(timeout):
                while not ping.is_answered:
                    if frames.is_over or self._has_ended:
                        raise self._closed()
                    if not self._step():
                        await self._wait()
        except TimeoutError as cause:
            kept = len(frames.messages)
            hint = f' ({kept} messages wait to be received)' if kept else ''
            error = HttpDataError(
                f'{self._origin}, no pong came within {timeout:g} seconds{hint}')
            error.response_started, error.phase = True, Phase.CONTENT
            raise error from cause
        finally:
            frames.forget_ping(ping)
        return perf_counter() - start

    async def close(self, code: int = 1000, reason: str = '') -> None:
        """Close the WebSocket, and wait until the peer has closed it too, for `close_timeout`.

        - `code`: 1000 to 1014 without those that RFC 6455 7.4.1 reserves, or 3000 to 4999.
        - `reason`: a text of at most 123 bytes.

        Messages that still come are kept for `receive`, up to 1 MiB of them. If the WebSocket is
        closed already, this only waits for the end. It raises no `HttpError`.
        """
        await self._close(code, reason, self._close_timeout)

    async def _close(self, code: int, reason: str, timeout: float) -> None:
        frames = self._frames
        self._step()
        if frames.is_open:
            try:
                frames.queue_close(code, reason)
            except ProtocolError as cause:
                raise ValueError(f'code or reason is not allowed: {cause}') from cause
        try:
            async with asyncio.timeout(timeout):
                while not self._has_ended and (
                        not frames.is_over or self._written < frames.queued):
                    if not self._step():
                        await self._wait()
            async with asyncio.timeout(min(END_TIMEOUT, timeout)):
                while not self._has_ended:
                    if not self._step():
                        await self._wait()
        except TimeoutError:
            pass
        finally:
            await self._end()

    def _closed(self) -> WebSocketClosedError:
        frames = self._frames
        code, reason = frames.closed_with()
        cause = frames.cause
        shown = f'{code} {reason!r}' if reason else f'{code}'
        if frames.has_failed:
            error: WebSocketClosedError = WebSocketProtocolError(
                f'{self._origin}, the WebSocket was closed with {code}: {cause}')
        else:
            error = WebSocketClosedError(
                f'{self._origin}, the peer closed the WebSocket: {shown}'
                if frames.protocol.close_rcvd is not None
                else f'{self._origin}, the WebSocket was closed: {shown}'
                if frames.protocol.close_sent is not None
                else f'{self._origin}, the connection was lost'
                     f'{"" if cause is None else f": {cause}"}')
        error.code, error.reason, error.__cause__ = code, reason, cause
        return error

    # What every method that waits goes on with

    async def _wait(self) -> None:
        """Wait until something that has begun can go on."""
        futures = []
        for begun, future in ((self._reading, self._readable), (self._writing, self._writable)):
            if begun is not None:
                if future is None:
                    await asyncio.sleep(0)
                    return
                futures.append(future)
        waiting = Waiting(futures)
        self._waiters.append(waiting)
        try:
            await waiting
        finally:
            self._waiters.remove(waiting)

    def _step(self) -> bool:
        """Read and write as far as that goes without waiting. True if anything came of it."""
        frames = self._frames
        if self._writing is None and not frames.output and not frames.pongs:
            return self._read()
        written = self._written
        self._write()
        written = self._written - written
        return self._read() or written > 0

    def _read(self) -> bool:
        if self._has_ended:
            return True
        frames = self._frames
        reading, readable = self._reading, self._readable
        if reading is None:
            if frames.data and not frames.is_cut:
                return self._go_on()
            if frames.kept >= MAX_KEPT and frames.is_open:
                return False
            reading = self._reading = self._body.__anext__()
            if self._waiters:
                self._wake_waiters()
        elif readable is not None and not readable.done():
            return False
        try:
            self._readable = step(reading)
            return False
        except StopIteration as read:
            self._reading = self._readable = None
            frames.feed(read.value)
            if frames.output or frames.pongs:
                self._write()
        except CancelledError:
            # Its receiver was cancelled. It has taken nothing.
            self._reading = self._readable = None
        except StopAsyncIteration:
            self._lose(None)
        except Exception as cause:
            self._lose(cause)
        return True

    def _go_on(self) -> bool:
        """Take messages for which there was no room before, if there is now."""
        frames = self._frames
        if frames.kept >= MAX_KEPT and frames.is_open:
            return False
        frames.find_messages()
        self._write()
        return True

    def _write(self) -> None:
        frames = self._frames
        while not self._has_ended:
            if self._writing is not None:
                if self._writable is not None and not self._writable.done():
                    return
                self._go_on_writing(self._writing)
            elif frames.output or frames.pongs:
                self._begin_to_write(frames.take_output())
            else:
                return

    def _begin_to_write(self, data: bytes) -> None:
        self._begun = self._frames.queued
        writing = self._body.send(data)
        if self._go_on_writing(writing):
            self._writing = writing
            self._frames.is_writing = True
            self._wake_waiters()

    def _go_on_writing(self, writing: Any) -> bool:
        """True if it has to wait."""
        try:
            self._writable = step(writing)
            return True
        except StopIteration:
            self._written = self._begun
        except Exception as cause:
            self._lose(cause)
        if self._writing is not None:
            self._writing = self._writable = None
            self._frames.is_writing = False
        return False

    def _wake_waiters(self) -> None:
        """They wait for what had begun when they began to wait."""
        for waiting in self._waiters:
            waiting.wake()
        readable = self._readable
        if self._is_receiving and readable is not None and not readable.done():
            # The receiver may wait for the read alone. Given up, it has taken nothing.
            self._reading.close()
            self._reading = self._readable = None
            readable.set_result(None)

    def _lose(self, cause: Exception | None) -> None:
        self._has_ended = True
        self._frames.end(cause)
        self._wake_waiters()

    async def _end(self) -> None:
        """Close the connection."""
        if not self._has_ended:
            self._lose(None)
        try:
            await self._body.aclose()
        finally:
            for begun in self._reading, self._writing:
                if begun is not None:
                    begun.close()
            self._reading = self._writing = None


def iterator_of(fragments: Any) -> AsyncIterator[Any]:
    if isinstance(fragments, AsyncIterable):
        return aiter(fragments)
    if isinstance(fragments, Iterable) and not isinstance(fragments, Mapping):
        return in_turn(fragments)
    raise TypeError('a message must be str or bytes, or an iterable of one of them, '
                    f'got {type(fragments).__name__}')


async def in_turn(fragments: Iterable[Any]) -> AsyncIterator[Any]:
    for fragment in fragments:
        yield fragment


# -------------------------------------------------------------------------------- frames

class Ping:
    __slots__ = ('data', 'is_answered')

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.is_answered = False


class Frames:
    """The two directions of a WebSocket, as bytes. It knows nothing of sockets, and never waits.

    The protocol gets what it has to know: all of what is received but data frames that hold a
    whole message, are not compressed, and are no longer than a message may be. In a state in which
    such a frame is not allowed, it gets that too.
    """

    __slots__ = ('protocol', 'limit', 'is_plain', 'is_open', 'is_over', 'has_failed', 'cause',
                 'messages', 'kept', 'data', 'position', 'is_cut', 'missing', 'pieces', 'opcode',
                 'fragments', 'check_text', 'output', 'pongs', 'queued', 'is_writing', 'pings',
                 'random', 'random_used')

    def __init__(self, protocol: ClientProtocol) -> None:
        self.protocol = protocol
        limit = protocol.max_message_size
        self.limit = float('inf') if limit is None else limit
        # Messages that are sent are not compressed.
        self.is_plain = not protocol.extensions
        # No close frame has been sent.
        self.is_open = True
        # No more messages come: there was a close frame, or the protocol was broken.
        self.is_over = False
        # The peer broke the protocol, or the connection was lost, for this reason.
        self.has_failed = False
        self.cause: Exception | None = None
        # Received: messages that wait, and what they count for.
        self.messages: deque[Message] = deque()
        self.kept = 0
        # Bytes that have been read, and up to where they have been used. If the rest is cut, it is
        # the beginning of the head of a frame.
        self.data = b''
        self.position = 0
        self.is_cut = True
        # Bytes that are missing of a frame that has begun. Its pieces so far, or None if the
        # protocol has got them.
        self.missing = 0
        self.pieces: list[bytes] | None = None
        self.opcode = 0
        # The message of which a part has come, and the decoder that looks at it if it is a text.
        self.fragments: bytearray | None = None
        self.check_text: codecs.IncrementalDecoder | None = None
        # To be sent: frames, and pongs, of which only the last one is kept while a send has begun.
        self.output: list[bytes] = []
        self.pongs: list[bytes] = []
        self.queued = 0
        self.is_writing = False
        self.pings: list[Ping] = []
        self.random = b''
        self.random_used = 0

    # Received

    def feed(self, data: bytes) -> None:
        if self.is_over:
            return
        if not self.data and not self.missing and self.fragments is None and \
                1 < len(data) < 128 and data[0] in MESSAGES and \
                data[1] == len(data) - 2 <= self.limit:
            # The commonest case: a short message, alone.
            self.add_message(data[0], data[2:])
            return
        if self.position < len(self.data):
            data = self.data[self.position:] + data
        self.data = data
        self.position = 0
        self.find_messages()

    def find_messages(self) -> None:
        """Take the messages out of the data, as long as there is room for them."""
        data = self.data
        start, end = self.position, len(data)
        self.is_cut = False
        while start < end and not self.is_over:
            if self.kept >= MAX_KEPT and self.is_open:
                break
            if self.missing:
                stop = min(start + self.missing, end)
                self.missing -= stop - start
                if self.pieces is None:
                    self.ask_protocol(data[start:stop])
                else:
                    self.pieces.append(data[start:stop])
                    if not self.missing:
                        self.add_message(self.opcode, b''.join(self.pieces))
                        self.pieces = None
                start = stop
                continue
            # RFC 6455 5.2.
            if end - start < 2:
                self.is_cut = True
                break
            opcode, length = data[start], data[start + 1]
            begin = start + 2
            if length > 125:
                if length < 128:
                    begin += 2 if length == 126 else 8
                    if begin > end:
                        self.is_cut = True
                        break
                    length = int.from_bytes(data[start + 2:begin], 'big')
                else:
                    # It is masked, which fails at once.
                    length = end - begin
            stop = begin + length
            if opcode in MESSAGES and length <= self.limit and \
                    self.fragments is None and data[start + 1] < 128:
                if stop <= end:
                    self.add_message(opcode, data[begin:stop])
                else:
                    self.opcode = opcode
                    self.pieces = [data[begin:]]
                    self.missing = stop - end
            else:
                if opcode == CLOSE:
                    # RFC 6455 5.4 and 5.5.1: it may come between fragments. Their message is
                    # dropped then. The protocol would refuse that.
                    self.protocol.current_size = None
                self.ask_protocol(data[start:stop])
                self.missing = max(stop - end, 0)
            start = min(stop, end)
        if start < end and not self.is_over:
            self.position = start
        else:
            self.data = b''
            self.position = 0

    def add_message(self, opcode: int, data: bytes | bytearray) -> None:
        message: Message
        if opcode == TEXT:
            try:
                message = str(data, 'utf-8')
            except UnicodeDecodeError as cause:
                self.refuse_text(cause)
                return
        else:
            message = bytes(data)
        # After our close frame, more than there is room for is dropped.
        if self.kept < MAX_KEPT:
            self.messages.append(message)
            self.kept += len(message) + COST_OF_MESSAGE

    def refuse_text(self, cause: UnicodeDecodeError) -> None:
        """RFC 6455 8.1."""
        self.cause = cause
        self.protocol.fail(1007, f'{cause.reason} at position {cause.start}')
        self.take_writes()

    def ask_protocol(self, data: bytes) -> None:
        protocol = self.protocol
        protocol.receive_data(data)
        for event in protocol.events_received():
            assert isinstance(event, Frame)
            if event.opcode is Opcode.PONG:
                self.note_pong(event.data)
            elif event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                self.add_fragment(event)
        if protocol.parser_exc is not None or protocol.close_rcvd is not None:
            self.cause = protocol.parser_exc
        self.take_writes()

    def add_fragment(self, frame: Frame) -> None:
        data = frame.data
        assert isinstance(data, (bytes, bytearray))
        if frame.opcode is not Opcode.CONT:
            opcode = TEXT if frame.opcode is Opcode.TEXT else BINARY
            if frame.fin:
                self.add_message(opcode, data)
                return
            self.opcode = opcode
            self.fragments = bytearray()
            self.check_text = codecs.getincrementaldecoder('utf-8')() if opcode == TEXT else None
        assert self.fragments is not None
        self.fragments += data
        if self.check_text is not None:
            # A text that can not become good any more fails at once.
            try:
                self.check_text.decode(data, frame.fin)
            except UnicodeDecodeError as cause:
                self.refuse_text(cause)
                return
        if frame.fin:
            fragments, self.fragments = self.fragments, None
            self.add_message(self.opcode, fragments)

    def note_pong(self, data: Any) -> None:
        """A pong answers all pings before its own, too (RFC 6455 5.5.3)."""
        for number, ping in enumerate(self.pings):
            if ping.data == data:
                for answered in self.pings[:number + 1]:
                    answered.is_answered = True
                del self.pings[:number + 1]
                break

    def take_writes(self) -> None:
        """Queue what the protocol has to say to what it has got: pongs, or a close frame."""
        protocol = self.protocol
        writes = [data for data in protocol.data_to_send() if data]
        if protocol.state is OPEN:
            self.pongs += writes
            if self.is_writing:
                del self.pongs[:-1]
        else:
            if protocol.close_rcvd is not None or self.cause is not None:
                self.is_over = True
                self.has_failed = self.cause is not None
            self.is_open = False
            self.output += self.pongs + writes
            self.pongs = []
            self.queued += len(writes)

    def end(self, cause: Exception | None) -> None:
        """The connection has ended."""
        if not self.is_over:
            self.cause = self.cause or cause
        self.is_open = False
        self.is_over = True
        self.output.clear()
        self.pongs.clear()

    def closed_with(self) -> tuple[int, str]:
        close = self.protocol.close_rcvd or self.protocol.close_sent
        return (LOST, '') if close is None else (int(close.code), close.reason)

    # Sent. Each returns how many frames have been queued then.

    def queue_message(self, first: int, data: bytes) -> int:
        if self.is_plain:
            self.output.append(self.make_frame(first, data))
            self.queued = queued = self.queued + 1
            return queued
        if first == TEXT:
            self.protocol.send_text(data)
        else:
            self.protocol.send_binary(data)
        return self.queue_writes()

    def queue_fragment(self, data: Any, first: bool, last: bool) -> int:
        if not first:
            self.protocol.send_continuation(
                data.encode() if isinstance(data, str) else data, fin=last)
        elif isinstance(data, str):
            self.protocol.send_text(data.encode(), fin=last)
        else:
            self.protocol.send_binary(data, fin=last)
        return self.queue_writes()

    def queue_ping(self, data: bytes) -> Ping:
        self.protocol.send_ping(data)
        ping = Ping(data)
        self.pings.append(ping)
        self.queue_writes()
        return ping

    def forget_ping(self, ping: Ping) -> None:
        if ping in self.pings:
            self.pings.remove(ping)

    def queue_close(self, code: int, reason: str) -> None:
        self.protocol.send_close(code, reason)
        self.is_open = False
        self.queue_writes()

    def queue_writes(self) -> int:
        self.output += self.protocol.data_to_send()
        self.queued += 1
        return self.queued

    def make_frame(self, first: int, data: bytes) -> bytes:
        """RFC 6455 5.2, 5.3. The mask is a new one each time, and can not be foreseen."""
        used = self.random_used
        if used == len(self.random):
            self.random = os.urandom(RANDOM_BYTES)
            used = 0
        self.random_used = used + 4
        mask = self.random[used:used + 4]
        length = len(data)
        if length < 126:
            head = SHORT(first, 128 | length, mask)
        elif length < 65536:
            head = MEDIUM(first, 254, length, mask)
        else:
            head = LONG(first, 255, length, mask)
        return head + apply_mask(data, mask)

    def take_output(self) -> bytes:
        if len(self.output) == 1 and not self.pongs:
            return self.output.pop()
        data = b''.join((*self.output, *self.pongs))
        self.output.clear()
        self.pongs.clear()
        return data


SHORT = struct.Struct('!BB4s').pack
MEDIUM = struct.Struct('!BBH4s').pack
LONG = struct.Struct('!BBQ4s').pack


# ----------------------------------------------------------------------- steps and waiting
#
# A send of the body closes the connection when it is cancelled, since a part of a frame may have
# been moved, and several tasks wait for the same read. So reads and sends are not awaited. They
# are stepped, and what they wait for is waited for by the tasks that want to know. A cancellation
# of such a task does not reach what it waits for, and the next task goes on from there.
#
# While nothing but the read has begun, the task that receives awaits what the read waits for, as
# that costs less. A cancellation ends the read then. It has taken nothing, and the next one goes
# on.

def step(steps: Any) -> Future | None:
    """Go on, once what it waits for has happened. Raises StopIteration at its end."""
    waits_for: Future | None = steps.send(None)
    if waits_for is not None:
        # It would be set to False by a task that awaits it.
        waits_for._asyncio_future_blocking = False
    return waits_for


class Waiting:
    """Waits for the first of some futures. To the task that awaits it, it looks like a future.

    When the task is cancelled, the futures are left alone, since others wait for them. A future
    that is made done by them would do the same, but would cost a turn of the loop each time.
    """

    __slots__ = ('futures', 'loop', 'callback', 'context', 'message', 'is_cancelled',
                 '_asyncio_future_blocking')

    def __init__(self, futures: list[Any]) -> None:
        self.futures = futures
        self.loop = get_running_loop()
        # What wakes the task, until it has been woken.
        self.callback: Callable[[Any], object] | None = None
        self.context: Any = None
        self.is_cancelled = False
        self.message: object = None
        self._asyncio_future_blocking = False

    def __await__(self) -> Generator[Any, None, None]:
        self._asyncio_future_blocking = True
        try:
            yield self
        finally:
            for future in self.futures:
                future.remove_done_callback(self.on_done)

    def wake(self) -> None:
        """From outside of a callback of the loop."""
        self.loop.call_soon(self.on_done, None, context=self.context)

    def on_done(self, _: object) -> None:
        callback, self.callback = self.callback, None
        if callback is not None:
            callback(self)

    # What a task asks of a future

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self.loop

    def add_done_callback(self, callback: Callable[[Any], object], *, context: Any) -> None:
        self.callback = callback
        self.context = context
        for future in self.futures:
            future.add_done_callback(self.on_done, context=context)

    def cancel(self, msg: object = None) -> bool:
        if self.callback is None or self.is_cancelled:
            return False
        self.is_cancelled = True
        self.message = msg
        self.wake()
        return True

    def result(self) -> None:
        if self.is_cancelled:
            raise CancelledError() if self.message is None else CancelledError(self.message)
