"""Server-sent events over the `request` of lowhaio: for ever, or those of one response.

::

    request, close = Pool()
    async for event in events(request, 'https://example.com/events'):
        print(event.type, event.data)

    code, headers, body = await request(b'POST', 'https://example.com/v1/messages', …)
    async for event in events_of(body):
        ...

From top to bottom:

    Parser        bytes in, events out. It never awaits, and knows nothing of connections
    BodyEvents    the events of one response body
    events        checks its arguments
    EventStream   connects, reads, and after a loss waits and connects again
    Options       what may be tried again, and after how many seconds

The format and the rules are those of section 9.2 of the HTML standard of the WHATWG:
https://html.spec.whatwg.org/multipage/server-sent-events.html

No task is created. Whoever waits for an event does all that is due, in the task that waits.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator
from random import uniform
from typing import Any, NamedTuple

import lowhaio_retry
from lowhaio import (
    Fields,
    Headers,
    HttpConnectionError,
    HttpDataError,
    HttpError,
    Phase,
    Timeouts,
    repeatable,
)

__all__ = ['BodyEvents', 'EventStream', 'EventStreamError', 'EventTooLong', 'Parser',
           'ServerSentEvent', 'events', 'events_of']

# The default of `max_event_length`: bytes that one event may have.
MAX_EVENT_LENGTH = 16 * 1024 * 1024

# The default of `max_silence`: seconds. The standard advises servers to send a comment every 15
# seconds or so, and those that do not may say nothing for minutes. A connection that a router has
# forgotten is noticed only by its silence.
MAX_SILENCE = 300

# From which pause on, in seconds, the pauses double after failures in a row. A server may have
# asked for no pause at all.
MIN_GROWING = 1

# Bytes of the content of an answer that is no event stream, and seconds to read it, for the error.
MAX_ANSWER = 64 * 1024
ANSWER_TIMEOUT = 1
MAX_SHOWN = 60

# The methods of RFC 9110 9.2.2.
IDEMPOTENT = frozenset((b'GET', b'HEAD', b'OPTIONS', b'TRACE', b'PUT', b'DELETE'))

# Request Timeout, Too Early and Too Many Requests: what the server could not do now, it may later.
PASSING = (b'408', b'425', b'429')

Response = tuple[bytes, Fields, Any]
# How a connection ended: with an exception, or with the code and the headers of its response.
Outcome = Exception | tuple[bytes, Fields]
OnReconnect = Callable[[int, float, Outcome], object]


class EventStreamError(HttpDataError):
    """A response that is no event stream, and would be none the next time."""

    response_started = True
    phase: Phase | str = Phase.HEAD
    is_lasting = True

    code: bytes = b''
    """The status code of the response, as three digits."""

    headers: Fields = ()
    """Its fields, as pairs."""

    body: bytes = b''
    """The beginning of its content, up to 64 KiB."""


class EventTooLong(HttpDataError):
    """An event has more bytes than `max_event_length`."""

    response_started = True
    phase: Phase | str = Phase.CONTENT
    is_lasting = True


class ServerSentEvent(NamedTuple):
    """An event."""

    type: str
    """What the server calls it: 'message' if it gives it no name."""

    data: str
    """Its lines, with a line feed between them."""

    id: str
    """The last ID that the server has given, in this event or before. '' if there is none."""


# ---------------------------------------------------------------------------------- the format
#
# `bytes.splitlines` knows the same three line ends as the standard, CRLF, LF and CR, and no other.
# Lines are taken apart as bytes, and what is kept of them is decoded afterwards. That gives the
# same text as decoding first, as no byte of a line end is ever a part of a longer character.
#
# A CR at the end of a chunk ends its line at once. If the next chunk begins with LF, that belonged
# to the CR, and is skipped.

BOM = b'\xef\xbb\xbf'
LF, CR = b'\n\r'


class Parser:
    """Finds the events in the content of an event stream, which may come in any pieces.

    - `last_event_id`: the ID of events before the first one that has an ID.
    - `max_event_length`: how many bytes an event may have: its lines of data, and the line that
      has not ended yet. What is longer raises `EventTooLong`.

    The attributes `last_event_id`, a str, and `retry`, in seconds, are the last ones that the
    server has told. `retry` is None before. An event that has not ended counts for nothing, but
    its `retry` does.
    """

    __slots__ = ('last_event_id', 'retry', '_max_length', '_line', '_is_after_cr', '_has_begun',
                 '_type', '_data', '_id', '_length', '__weakref__')

    def __init__(self, last_event_id: str = '', max_event_length: int = MAX_EVENT_LENGTH) -> None:
        self.last_event_id = last_event_id
        self.retry: float | None = None
        self._max_length = max_event_length
        # The line that has not ended yet.
        self._line = bytearray()
        self._is_after_cr = False
        # Whether there was a whole line.
        self._has_begun = False
        # What is known of the next event: its type, its lines of data, and their length.
        self._type = ''
        self._data: list[bytes] = []
        self._length = 0
        self._id = last_event_id

    def __repr__(self) -> str:
        return (f'<Parser {self._length + len(self._line)} bytes held '
                f'has_begun={self._has_begun} retry={self.retry}>')

    def feed(self, chunk: bytes) -> Iterator[ServerSentEvent]:
        """The events that end in this chunk. Take all of them before you feed the next one.

        While they are taken, `last_event_id` is that of the event that was taken last.
        """
        data, max_length = self._data, self._max_length
        for line in self._lines_of(chunk):
            if not line:
                self.last_event_id = self._id
                name, self._type = self._type, ''
                if data:
                    text = decoded(b'\n'.join(data))
                    data.clear()
                    self._length = 0
                    # What calling the class comes to, in half the time.
                    yield tuple.__new__(ServerSentEvent, (name or 'message', text, self._id))
                continue
            length = self._length + len(line)
            if length > max_length:
                raise too_long(max_length)
            # What nearly all lines are.
            if line[:6] == b'data: ':
                data.append(line[6:])
                self._length = length
                continue
            field, _, value = line.partition(b':')
            # One space after the colon is no part of the value.
            value = value.removeprefix(b' ')
            if field == b'data':
                data.append(value)
                self._length = length
            else:
                self._take(field, value)
        if self._length + len(self._line) > max_length:
            raise too_long(max_length)

    def _lines_of(self, chunk: bytes) -> list[bytes]:
        """The lines that end in this chunk. The beginning of one that does not is kept."""
        if self._is_after_cr and chunk:
            self._is_after_cr = False
            chunk = chunk.removeprefix(b'\n')
        if not chunk:
            return []
        lines = chunk.splitlines()
        last = chunk[-1]
        self._is_after_cr = last == CR
        rest = b'' if last in (LF, CR) else lines.pop()
        if lines and self._line:
            lines[0] = bytes(self._line + lines[0])
            self._line.clear()
        if lines and not self._has_begun:
            self._has_begun = True
            lines[0] = lines[0].removeprefix(BOM)
        if rest:
            self._line += rest
        return lines

    def _take(self, field: bytes, value: bytes) -> None:
        """What a line says that has no data. A comment is a field without a name."""
        if field == b'event':
            self._type = decoded(value)
        elif field == b'id' and b'\0' not in value:
            self._id = decoded(value)
        elif field == b'retry' and value.isdigit():
            self.retry = float(value) / 1000


def too_long(max_length: int) -> EventTooLong:
    return EventTooLong(f'an event is longer than max_event_length, {max_length} bytes')


def decoded(data: bytes) -> str:
    """Event streams are always UTF-8, whatever their content-type says."""
    return data.decode('utf-8', 'replace')


# ---------------------------------------------------------------------------- of one response

def events_of(body: AsyncIterable[bytes], *, last_event_id: str = '',
              max_event_length: int = MAX_EVENT_LENGTH) -> BodyEvents:
    """The events of one response body, as an async iterator.

    - `body`: that of a response, or any async iterable of bytes.
    - `last_event_id`: the ID of events before the first one that has an ID.
    - `max_event_length`: how many bytes an event may have. A longer one raises `EventTooLong`, and
      closes the body.

    It ends with the body, and raises what reading the body raises: an `HttpDataError` if it was
    cut off. An event that has not ended by then is dropped. The status and the content-type of the
    response are not looked at.
    """
    return BodyEvents(body, Parser(last_event_id, checked_length(max_event_length)))


class BodyEvents:
    """What `events_of` returns. If it is dropped unfinished, so is the body."""

    __slots__ = ('_body', '_parser', '_found', '__weakref__')

    def __init__(self, body: AsyncIterable[bytes], parser: Parser) -> None:
        self._body: Any = aiter(body)
        self._parser = parser
        # The events of the chunk that was read last.
        self._found: Iterator[ServerSentEvent] = iter(())

    def __repr__(self) -> str:
        return f'<BodyEvents {self._parser!r} of {self._body!r}>'

    @property
    def last_event_id(self) -> str:
        """That of the event that was returned last, or of what came after it without data."""
        return self._parser.last_event_id

    @property
    def retry(self) -> float | None:
        """The seconds after which the server wants its clients to come back. None: it did not say.
        """
        return self._parser.retry

    def __aiter__(self) -> BodyEvents:
        return self

    async def __anext__(self) -> ServerSentEvent:
        try:
            while True:
                for event in self._found:
                    return event
                self._found = self._parser.feed(await anext(self._body))
        except EventTooLong:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Close the body, and so its connection, unless the whole response has arrived.

        Events that have not been returned are dropped.
        """
        self._found = iter(())
        if hasattr(self._body, 'aclose'):
            await self._body.aclose()


# ----------------------------------------------------------------------------------- for ever

def events(
        request: Callable[..., Awaitable[Response]], url: str,
        *, method: bytes = b'GET', headers: Headers = (),
        last_event_id: str = '',
        max_silence: float | None = MAX_SILENCE, max_event_length: int = MAX_EVENT_LENGTH,
        reconnects: bool | None = None, pause: float = 3, max_pause: float = 60,
        max_retry_after: float = 3600, jitter: float = 0.5, max_failures: int | None = None,
        on_reconnect: OnReconnect | None = None,
        timeouts: Timeouts | None = None, **kwargs: Any) -> EventStream:
    """The events of a URL, as an async iterator that connects again when its connection is lost.

    All times are in seconds. Arguments that make no sense raise TypeError or ValueError at once.

    - `request`: that of a pool, with any layers around it.
    - `method`, `headers`: those of each request. `accept` and `cache-control` are added if they
      are not there, and `last-event-id` once there is one.
    - `last_event_id`: that of an earlier run, to go on after it.
    - `max_silence`: a connection on which nothing comes for so long is lost. It is also the time
      for the head of the response. None: it may be silent for ever. It is the `'read'` of
      `timeouts`, if these have none.
    - `max_event_length`: how many bytes an event may have.
    - `reconnects`: whether it connects again at all. None: if the method is idempotent. Without it
      the events are those of one response. They end with it, or with an error if it is cut off.
    - `pause`: how long to wait before connecting again, until the server says it, by `retry`.
    - `max_pause`: the pause doubles with each failure in a row, up to this one. An event ends the
      row.
    - `max_retry_after`: how long a `retry` of the server, or a `retry-after` of a response that is
      no event stream, may make a pause.
    - `jitter`: a random share of each pause, up to this one, is added to it.
    - `max_failures`: so many failures in a row, without an event, raise the last one. None: no
      number of them does.
    - `on_reconnect(attempt, seconds, outcome)`: called before each pause, with the number of the
      failure, from 1 on, and how the connection ended: an exception, or the code and the headers
      of the response. With b'200' its content has ended. What it raises ends the events.
    - `timeouts`, `**kwargs`: passed on to `request`.

    It ends with a 204, and when it is closed. Tried again are lost connections, content that ends,
    429, 408, 425 and all codes of 500 and above. Anything else is no event stream, and raises an
    `EventStreamError`. What would fail in the same way is raised, too: see `is_lasting` of
    lowhaio-retry. After the first request, an `HttpConnectionError` becomes an `HttpDataError`.
    """
    if not callable(request):
        raise TypeError(f'request must be a coroutine function, got {type(request).__name__}')
    if not isinstance(method, bytes) or not isinstance(url, str):
        raise TypeError(f'method must be bytes, and url a str, got {method!r} and a '
                        f'{type(url).__name__}')
    if not isinstance(last_event_id, str) or not is_sendable(last_event_id):
        raise ValueError('last_event_id must be a str without control characters')
    headers = tuple(headers)
    names = {name.lower() for name, _ in headers}
    if b'last-event-id' in names:
        raise ValueError('headers must not have last-event-id: give last_event_id')
    kwargs['headers'] = headers + tuple(field for field in ADDED if field[0] not in names)
    kwargs['timeouts'] = {'read': max_silence, **(timeouts or {})}
    if 'body' in kwargs:
        kwargs['body'] = repeatable(kwargs['body'])
    for name in ('params', 'body_args', 'body_kwargs'):
        if isinstance(kwargs.get(name), Iterator):
            kwargs[name] = tuple(kwargs[name])
    return EventStream(request, method, url, kwargs, last_event_id, Options(
        method in IDEMPOTENT if reconnects is None else reconnects, pause, max_pause,
        max_retry_after, jitter, max_failures, on_reconnect, max_event_length))


# What browsers send.
ADDED = ((b'accept', b'text/event-stream'), (b'cache-control', b'no-cache'))


class EventStream:
    """What `events` returns. One task at a time may read it, or `aclose` it.

    `async with` closes it at the end of the block. If it is dropped, its connection closes.
    """

    __slots__ = ('_request', '_method', '_url', '_kwargs', '_options', '_last_event_id', '_retry',
                 '_events', '_headers', '_failures', '_due', '_was_sent', '_is_read', '_is_closed',
                 '__weakref__')

    def __init__(self, request: Callable[..., Awaitable[Response]], method: bytes, url: str,
                 kwargs: dict[str, Any], last_event_id: str, options: Options) -> None:
        self._request = request
        self._method = method
        self._url = url
        self._kwargs = kwargs
        self._options = options
        # What the connections before this one have told.
        self._last_event_id = last_event_id
        self._retry = options.pause
        # Those of the connection, and the headers of its response. None: it is to be made.
        self._events: BodyEvents | None = None
        self._headers: Fields = ()
        # Since the last event.
        self._failures = 0
        # When to connect, in the loop's time.
        self._due = -math.inf
        # Whether a server may have seen any request.
        self._was_sent = False
        self._is_read = self._is_closed = False

    def __repr__(self) -> str:
        state = ('closed' if self._is_closed else
                 'not connected' if self._events is None else 'connected')
        return f'<EventStream {origin_of(self._url)} {state} failures={self._failures}>'

    @property
    def last_event_id(self) -> str:
        """The last ID that the server has given. It can be the `last_event_id` of a later run."""
        return self._last_event_id if self._events is None else self._events.last_event_id

    async def __aenter__(self) -> EventStream:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> ServerSentEvent:
        if self._is_read:
            raise RuntimeError('the events are being read by another task')
        self._is_read = True
        try:
            while not self._is_closed:
                if self._events is None:
                    await self._connect()
                    continue
                try:
                    event = await anext(self._events)
                except (StopAsyncIteration, HttpError) as end:
                    if not self._is_closed and not self._may_go_on(end):
                        raise
                    await self._disconnect()
                    self._plan(end if isinstance(end, HttpError) else (b'200', self._headers))
                else:
                    self._failures = 0
                    return event
        except BaseException as error:
            # After a cancellation, the next call connects again.
            self._is_closed = self._is_closed or isinstance(error, Exception)
            await self._disconnect()
            raise
        finally:
            self._is_read = False
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Close the connection. Whoever reads on finds the end."""
        self._is_closed = True
        await self._disconnect()

    async def _disconnect(self) -> None:
        events, self._events = self._events, None
        if events is not None:
            self._last_event_id = events.last_event_id
            self._retry = self._retry if events.retry is None else events.retry
            await events.aclose()

    async def _connect(self) -> None:
        seconds = self._due - now()
        if seconds > 0:
            await asyncio.sleep(seconds)
        if self._is_closed:
            return
        try:
            code, headers, body = await self._request(self._method, self._url, **self._arguments())
        except HttpError as error:
            if self._is_closed:
                return
            if not self._may_reconnect(error):
                if self._was_sent and isinstance(error, HttpConnectionError):
                    raise not_the_first(error) from error
                raise
            self._was_sent = self._was_sent or not isinstance(error, HttpConnectionError)
            self._plan(error)
            return
        self._was_sent = True
        if self._is_closed or code == b'204':
            self._is_closed = True
            await body.aclose()
        elif code == b'200' and is_event_stream(headers):
            self._headers = headers
            self._events = events_of(body, last_event_id=self._last_event_id,
                                     max_event_length=self._options.max_event_length)
        elif is_passing(code) and self._may_reconnect():
            await body.aclose()
            self._plan((code, headers))
        else:
            raise await self._refusal(code, headers, body)

    def _arguments(self) -> dict[str, Any]:
        # A field cannot hold all that an ID can.
        if not self._last_event_id or not is_sendable(self._last_event_id):
            return self._kwargs
        field = b'last-event-id', self._last_event_id.encode()
        return {**self._kwargs, 'headers': (*self._kwargs['headers'], field)}

    def _may_go_on(self, end: StopAsyncIteration | HttpError) -> bool:
        """Whether to connect again after this end of a connection."""
        error = end if isinstance(end, HttpError) else None
        may_reconnect = self._may_reconnect(error)
        if error is None and self._options.reconnects and not may_reconnect:
            raise EventStreamError(
                f'{self._where()}, the event stream has ended, which is failure '
                f'{self._failures} in a row') from None
        return may_reconnect

    def _may_reconnect(self, error: HttpError | None = None) -> bool:
        self._failures += 1
        return (self._options.reconnects and self._failures < self._options.max_failures
                and (error is None or not comes_again(error)))

    def _plan(self, outcome: Outcome) -> None:
        if self._is_closed:
            return
        options = self._options
        seconds = options.seconds(self._failures, self._retry, outcome)
        if options.on_reconnect is not None:
            options.on_reconnect(self._failures, seconds, outcome)
        self._due = now() + seconds

    async def _refusal(self, code: bytes, headers: Fields, body: Any) -> EventStreamError:
        content = await beginning(body)
        what = f'{self._where()}, expected an event stream, got {code.decode()}'
        if code == b'200':
            what += f' with the content-type {media_type(headers)[:MAX_SHOWN]!r}'
            if coding := coding_of(headers):
                what += (f', in the coding {coding[:MAX_SHOWN]!r}, which lowhaio-compression '
                         'around the request would decode')
        if code.startswith(b'3'):
            what += ', which lowhaio-redirect around the request would follow'
        error = EventStreamError(f'{what}: {content[:MAX_SHOWN]!r}')
        error.code, error.headers, error.body = code, headers, content
        return error

    def _where(self) -> str:
        return f'{self._method.decode()} {origin_of(self._url)}'


class Options:
    """The checked arguments of `events` that tell what to do when a connection is lost."""

    __slots__ = ('reconnects', 'pause', 'max_pause', 'max_retry_after', 'jitter', 'max_failures',
                 'on_reconnect', 'max_event_length')

    def __init__(self, reconnects: bool, pause: float, max_pause: float, max_retry_after: float,
                 jitter: float, max_failures: int | None, on_reconnect: OnReconnect | None,
                 max_event_length: int) -> None:
        for name, seconds in (('pause', pause), ('max_pause', max_pause), ('jitter', jitter),
                              ('max_retry_after', max_retry_after)):
            if not isinstance(seconds, (int, float)) or not 0 <= seconds < math.inf:
                raise ValueError(f'{name} must be a number, 0 or more, got {seconds!r}')
        if not isinstance(reconnects, bool):
            raise TypeError(f'reconnects must be a bool or None, got {reconnects!r}')
        if max_failures is not None and (not isinstance(max_failures, int) or max_failures < 1):
            raise ValueError(f'max_failures must be a number, 1 or more, or None, got '
                             f'{max_failures!r}')
        if on_reconnect is not None and not callable(on_reconnect):
            raise TypeError(f'on_reconnect must be a function, got {on_reconnect!r}')
        self.reconnects = reconnects
        self.pause = pause
        self.max_pause = max_pause
        self.max_retry_after = max_retry_after
        self.jitter = jitter
        self.max_failures: float = math.inf if max_failures is None else max_failures
        self.on_reconnect = on_reconnect
        self.max_event_length: int = checked_length(max_event_length)

    def seconds(self, failures: int, retry: float, outcome: Outcome) -> float:
        """How long to wait after so many failures, the last of which was this one."""
        seconds = min(retry, self.max_retry_after)
        if failures > 1:
            doubled: float = max(seconds, MIN_GROWING) * 2 ** min(failures - 1, 60)
            seconds = max(seconds, min(doubled, self.max_pause))
        if isinstance(outcome, tuple):
            asked = lowhaio_retry.retry_after(outcome[1])
            seconds = max(seconds, min(asked, self.max_retry_after))
        return seconds * uniform(1, 1 + self.jitter)


def checked_length(length: int) -> int:
    if not isinstance(length, int) or length < 1:
        raise ValueError(f'max_event_length must be a number of bytes, 1 or more, got {length!r}')
    return length


def is_sendable(event_id: str) -> bool:
    """Whether the value of a field can be this ID (RFC 9110 5.5)."""
    return not re.search('[\0-\x08\x0a-\x1f\x7f\ud800-\udfff]', event_id)


def is_passing(code: bytes) -> bool:
    """Whether another request may find an event stream."""
    return code in PASSING or code.startswith(b'5')


def comes_again(error: HttpError) -> bool:
    # A place in the pool may be free the next time.
    return error.phase != Phase.POOL and lowhaio_retry.is_lasting(error)


def not_the_first(error: HttpConnectionError) -> HttpDataError:
    """Whoever retries must know that a server has received an earlier request."""
    raised = HttpDataError(f'connecting again: {error}')
    raised.reused, raised.phase, raised.response_started = error.reused, error.phase, True
    return raised


def is_event_stream(headers: Fields) -> bool:
    """One that is compressed would have no events in it."""
    return media_type(headers) == b'text/event-stream' and not coding_of(headers)


def coding_of(headers: Fields) -> bytes:
    coding = dict(headers).get(b'content-encoding', b'').lower()
    return b'' if coding == b'identity' else coding


def media_type(headers: Fields) -> bytes:
    """Without its parameters. Of several, the last one counts, as in browsers."""
    return dict(headers).get(b'content-type', b'').partition(b';')[0].strip().lower()


async def beginning(body: Any) -> bytes:
    """The first bytes of a body that is of no other use."""
    content = bytearray()
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            async for chunk in body:
                content += chunk
                if len(content) >= MAX_ANSWER:
                    break
    except (HttpError, TimeoutError):
        pass
    finally:
        await body.aclose()
    return bytes(content[:MAX_ANSWER])


def origin_of(url: str) -> str:
    """The part of a URL that may be shown: no path, no query and no userinfo."""
    match = re.match(r'([^:/?#]+://)(?:[^/?#]*@)?([^/?#]*)', url)
    return ''.join(match.groups()) if match is not None else ''


def now() -> float:
    return asyncio.get_running_loop().time()
