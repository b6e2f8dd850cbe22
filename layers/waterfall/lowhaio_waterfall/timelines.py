"""What happened to requests: a `Recorder` is told of it by a pool, and makes timelines of it.

All times are seconds of `time.monotonic()`. Nothing here holds an exception, since that would keep
the frames that it went through, and all that is in them.
"""

from __future__ import annotations

import math
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar, cast

from lowhaio import (
    BodyEnded,
    BodySent,
    ConnectionAttempted,
    ConnectionClosed,
    ConnectionTaken,
    Event,
    Fields,
    HeadReceived,
    HeadSent,
    NameResolved,
    PlaceAwaited,
    RequestFailed,
    RequestStarted,
    ResponseStarted,
    TlsNegotiated,
    empty_async_iterator,
    streamed,
)

PHASES = ('client', 'place', 'lookup', 'connect', 'tls', 'send', 'wait', 'head', 'body')
"""The names of phases, in the order in which a request goes through them.

- `client`: nothing was waited for, so the client itself or other tasks of its loop were at work
- `place`: for a connection, because as many as the pool may have were in use
- `lookup`: for the addresses of the host
- `connect`: for a TCP connection to one of them
- `tls`: for the TLS handshake
- `send`: until the request had been handed to the kernel
- `wait`: for the first byte of the response
- `head`: for the rest of the response's head, interim responses included
- `body`: for the rest of the response
"""

# A layer returns a function of the type that it was given: same arguments, same response.
AnyRequest = TypeVar('AnyRequest', bound=Callable[..., Awaitable[tuple[bytes, Fields, Any]]])


# ---------------------------------------------------------------------- one request's timeline

class Span(NamedTuple):
    """A part of the time of a request."""

    name: str
    """One of `PHASES`."""
    started: float
    ended: float

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.ended - self.started


class Failure(NamedTuple):
    """What an exception said."""

    type: str
    """The name of its class, such as `'HttpTlsError'`."""
    message: str
    phase: str | None
    """That of an `HttpError`, such as `'tls'`. None for other exceptions."""

    @classmethod
    def of(cls, error: BaseException | None) -> Failure | None:
        """That of an exception, or None for None."""
        if error is None:
            return None
        phase = getattr(error, 'phase', None)
        return cls(type(error).__name__, str(error), None if phase is None else str(phase))

    def __str__(self) -> str:
        return f'{self.type}: {self.message}' if self.message else self.type


class Lookup(NamedTuple):
    """A host's addresses were asked for."""

    started: float
    ended: float
    host: str
    addresses: tuple[str, ...]
    failure: Failure | None


class Attempt(NamedTuple):
    """An attempt to connect to one address."""

    started: float
    ended: float
    peer: str
    """Address and port, such as `'192.0.2.1:443'`."""
    outcome: str
    """`'connected'`, `'failed'`, or `'given up'`: another one was faster, or the request over."""
    connection: int | None
    """The number of the connection that was made, in its pool."""
    failure: Failure | None


class Tls(NamedTuple):
    """A TLS handshake."""

    started: float
    ended: float
    version: str | None
    cipher: str | None
    is_resumed: bool
    failure: Failure | None


class Connection(NamedTuple):
    """The connection that a request went over."""

    number: int
    """Its own, in its pool, from 1 on."""
    request: int
    """The number of the request on it. 1 is a new connection."""
    peer: str | None
    """Address and port, or the path of a unix socket. None if there is no address."""
    local: str | None
    tls_version: str | None
    """Such as `'TLSv1.3'`. None without TLS."""
    cipher: str | None


class Response(NamedTuple):
    """The head of a response."""

    code: int
    http_version: str
    """Such as `'HTTP/1.1'`."""
    headers: Fields
    """They may hold secrets."""
    reason: str = ''
    """That of the status line, if `Recorder.around` has seen the response."""


class Sizes(NamedTuple):
    """How many bytes have been sent and received."""

    sent_head: int = 0
    sent_body: int = 0
    """With the framing of chunks."""
    head: int = 0
    body: int = 0
    """Without the framing of chunks, and as encoded by a content-encoding."""


@dataclass(slots=True, eq=False, repr=False)
class Timeline:
    """What is known of one request. Its attributes are filled in as things happen.

    Times are seconds of `time.monotonic()`. A redirect that is followed, and each attempt of a
    layer that retries, is a request of its own.
    """

    number: int
    """That of the request in its pool, from 1 on."""
    method: str
    origin: str
    """Scheme, host and port, such as `'https://www.example.com:443'`."""
    target: str
    """What was asked for, as it was sent. It may hold secrets."""
    started: float
    started_at: datetime
    """The same by the clock, in UTC."""
    last: float
    """When something happened last."""
    times: dict[str, float] = field(default_factory=dict)
    """When this happened: `connection_taken`, `head_sent`, `body_sent`, `response_started`,
    `head_received`, and `ended`, in a response or a failure."""
    places: list[Span] = field(default_factory=list)
    """For which times it waited for a connection."""
    lookups: list[Lookup] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    tls: Tls | None = None
    """The handshake. None if there was none, as on a connection that is reused."""
    connection: Connection | None = None
    sizes: Sizes = Sizes()
    response: Response | None = None
    failure: Failure | None = None
    """Why there is no response, or not all of it."""
    closing: str | None = None
    """Why the connection was closed after this request. None while it is open."""
    headers: Fields = ()
    """The fields of the request, if `Recorder.around` was given them. Events do not tell them."""
    sent: bytearray = field(default_factory=bytearray)
    """The beginning of the request's content, if `Recorder.around` was asked to keep it."""
    received: bytearray = field(default_factory=bytearray)
    """The same of the response's content."""

    def __repr__(self) -> str:
        state = 'open' if 'ended' not in self.times else 'failed' if self.failure else 'ended'
        return f'<Timeline {self.number} {self.method} {self.origin} {state} {self.duration:.6f}>'

    @property
    def url(self) -> str:
        """What was asked for. It may hold secrets."""
        if re.match('https?://', self.target, re.IGNORECASE):
            return self.target
        scheme, _, authority = self.origin.partition('://')
        authority = authority.removesuffix(':443' if scheme == 'https' else ':80')
        return f'{scheme}://{authority}{self.target if self.target.startswith("/") else "/"}'

    @property
    def duration(self) -> float:
        """Seconds from the begin to the end, or to what happened last."""
        return self.last - self.started

    @property
    def phases(self) -> tuple[Span, ...]:
        """What the request was at, from its begin to its end, without a gap or an overlap.

        Where two things happened at once, such as a lookup of other addresses while connecting,
        the one further down in `PHASES` counts. A phase that took no time is left out.
        """
        spans = list(self._spans())
        edges = {self.started, self.last, *(edge for span in spans for edge in span[1:])}
        tiles: list[Span] = []
        for begin, end in pairwise(sorted(edge for edge in edges
                                          if self.started <= edge <= self.last)):
            names = [span.name for span in spans if span.started <= begin and end <= span.ended]
            name = max(names, key=PHASES.index, default='client')
            if tiles and tiles[-1].name == name:
                begin = tiles.pop().started
            tiles.append(Span(name, begin, end))
        return tuple(tiles)

    @property
    def durations(self) -> dict[str, float]:
        """The seconds of each phase that took any."""
        seconds: dict[str, float] = {}
        for span in self.phases:
            seconds[span.name] = seconds.get(span.name, 0) + span.duration
        return seconds

    def _spans(self) -> Iterator[Span]:
        yield from self.places
        yield from (Span('lookup', each.started, each.ended) for each in self.lookups)
        yield from (Span('connect', each.started, each.ended) for each in self.attempts)
        if self.tls is not None:
            yield Span('tls', self.tls.started, self.tls.ended)
        times = self.times
        begins = (('send', times.get('connection_taken')), ('wait', self._sent()),
                  ('head', times.get('response_started')), ('body', times.get('head_received')),
                  ('', self.last))
        known = [(name, begin) for name, begin in begins if begin is not None]
        # An interim response comes while the request waits to be sent, so a step can be negative.
        yield from (Span(name, begin, end) for (name, begin), (_, end) in pairwise(known))

    def _sent(self) -> float | None:
        """When the request had been sent. A final response that comes before that counts as well,
        since it is what happens from then on."""
        times = self.times
        if 'body_sent' not in times:
            is_unsent = self.failure is not None and self.failure.phase in ('send', 'body')
            return None if is_unsent else times.get('head_sent')
        is_early = times.get('head_received', math.inf) < times['body_sent']
        return times['response_started' if is_early else 'body_sent']

    # What is told by each event. `last` and `times` are set by the recorder.

    def _place_awaited(self, event: PlaceAwaited) -> None:
        self.places.append(Span('place', event.started, event.time))

    def _name_resolved(self, event: NameResolved) -> None:
        self.lookups.append(Lookup(
            event.started, event.time, event.host, event.addresses, Failure.of(event.error)))

    def _connection_attempted(self, event: ConnectionAttempted) -> None:
        outcome = ('failed' if event.error is not None
                   else 'given up' if event.connection is None else 'connected')
        self.attempts.append(Attempt(event.started, event.time, event.peer, outcome,
                                     event.connection, Failure.of(event.error)))

    def _tls_negotiated(self, event: TlsNegotiated) -> None:
        self.tls = Tls(event.started, event.time, event.version, event.cipher, event.is_resumed,
                       Failure.of(event.error))

    def _connection_taken(self, event: ConnectionTaken) -> None:
        facts = event.facts
        self.connection = Connection(
            event.connection, event.number, address_text(facts.peer), address_text(facts.local),
            facts.tls_version, facts.cipher[0] if facts.cipher is not None else None)

    def _head_sent(self, event: HeadSent) -> None:
        self.sizes = self.sizes._replace(sent_head=event.size)

    def _body_sent(self, event: BodySent) -> None:
        self.sizes = self.sizes._replace(sent_body=event.size)

    def _response_started(self, event: ResponseStarted) -> None:
        """There is nothing but the time of it."""

    def _head_received(self, event: HeadReceived) -> None:
        self.sizes = self.sizes._replace(head=event.size)
        self.response = Response(
            int(event.code), event.http_version.decode(), tuple(event.headers))

    def _body_ended(self, event: BodyEnded) -> None:
        self.sizes = self.sizes._replace(body=event.size)
        self.failure = Failure.of(event.error)

    def _request_failed(self, event: RequestFailed) -> None:
        self.failure = Failure.of(event.error)


# By the class of an event, what it changes in a timeline, and the name of its time, if it has one.
HANDLERS: dict[type[Any], tuple[Callable[[Timeline, Any], None], str]] = {
    PlaceAwaited: (Timeline._place_awaited, ''),
    NameResolved: (Timeline._name_resolved, ''),
    ConnectionAttempted: (Timeline._connection_attempted, ''),
    TlsNegotiated: (Timeline._tls_negotiated, ''),
    ConnectionTaken: (Timeline._connection_taken, 'connection_taken'),
    HeadSent: (Timeline._head_sent, 'head_sent'),
    BodySent: (Timeline._body_sent, 'body_sent'),
    ResponseStarted: (Timeline._response_started, 'response_started'),
    HeadReceived: (Timeline._head_received, 'head_received'),
    BodyEnded: (Timeline._body_ended, 'ended'),
    RequestFailed: (Timeline._request_failed, 'ended'),
}


def address_text(address: Any) -> str | None:
    """An address of a socket, as `'192.0.2.1:443'` or `'[2001:db8::1]:443'`, or its path."""
    if isinstance(address, tuple):
        host, port = address[:2]
        return f'[{host}]:{port}' if ':' in host else f'{host}:{port}'
    return str(address) if address else None


# ------------------------------------------------------------------------------- the recorder

# Of the request that begins: what `Recorder.around` knows, until its timeline has it.
BEGINNING: ContextVar[Beginning | None] = ContextVar('lowhaio_waterfall_beginning', default=None)


@dataclass(slots=True)
class Beginning:
    """What a request was called with, and what becomes its timeline."""

    recorder: Recorder
    headers: Iterable[tuple[bytes, bytes]] | None
    on_start: Callable[[Timeline], object] | None
    timeline: Timeline | None = None


class Recorder:
    """Makes timelines of the events of one pool: `Pool(on_event=recorder)`.

    It keeps the last `max_requests` timelines, also of requests that have not ended. `on_end` is
    called with each timeline when its request has ended, by which it should not be kept waiting.
    Each pool needs a recorder of its own, because pools count their requests and connections.
    """

    def __init__(self, max_requests: int = 1000,
                 on_end: Callable[[Timeline], object] | None = None) -> None:
        if not isinstance(max_requests, int) or max_requests < 1:
            raise ValueError(f'max_requests must be a number, 1 or more, got {max_requests!r}')
        if on_end is not None and not callable(on_end):
            raise TypeError(f'on_end must be a function, got {on_end!r}')
        self._max_requests = max_requests
        self._on_end = on_end
        self._timelines: OrderedDict[int, Timeline] = OrderedDict()
        # The last request of each open connection, so as to tell it when that closes.
        self._users: dict[int, Timeline] = {}
        # Added to a monotonic time, this is the time by the clock. The clock may be set meanwhile,
        # and the times of a recording have to stay in their order.
        self._clock = time.time() - time.monotonic()

    def __repr__(self) -> str:
        return f'<Recorder {len(self._timelines)} of at most {self._max_requests} requests>'

    @property
    def timelines(self) -> tuple[Timeline, ...]:
        """Those of the last requests, in the order in which they began."""
        return tuple(self._timelines.values())

    def clear(self) -> None:
        """Forget all requests, also those that have not ended."""
        self._timelines.clear()
        self._users.clear()

    def __call__(self, event: Event) -> None:
        """What a pool calls."""
        # What else there is, or will be, has no place in a timeline.
        if type(event) in HANDLERS:
            self._tell(event)
        elif isinstance(event, RequestStarted):
            self._begin(event)
        elif isinstance(event, ConnectionClosed):
            user = self._users.pop(event.connection, None)
            if user is not None:
                user.closing = event.reason

    def _begin(self, event: RequestStarted) -> None:
        timeline = self._timelines[event.request] = Timeline(
            event.request, event.method.decode('latin-1'), event.origin,
            event.target.decode('latin-1'), event.time,
            datetime.fromtimestamp(self._clock + event.time, UTC), event.time)
        if len(self._timelines) > self._max_requests:
            self._timelines.popitem(last=False)
        beginning = BEGINNING.get()
        if (beginning is not None and beginning.recorder is self
                and beginning.timeline is None):
            beginning.timeline = timeline
            # The pool has checked them.
            timeline.headers = tuple(beginning.headers or ())
            if beginning.on_start is not None:
                beginning.on_start(timeline)

    def _tell(self, event: Any) -> None:
        timeline = self._timelines.get(event.request)
        if timeline is None:
            return
        change, name = HANDLERS[type(event)]
        change(timeline, event)
        timeline.last = max(timeline.last, event.time)
        if name:
            timeline.times[name] = event.time
        if isinstance(event, ConnectionTaken):
            self._users[event.connection] = timeline
        elif isinstance(event, (BodyEnded, RequestFailed)) and self._on_end is not None:
            self._on_end(timeline)

    def around(self, request: AnyRequest, *, max_content: int = 0,
               on_start: Callable[[Timeline], object] | None = None) -> AnyRequest:
        """A `request` whose timelines have what events do not tell. Put it right around a pool's.

        That is the headers that were given, the reason of the response, and up to `max_content`
        bytes each of the request's content, if its body is `streamed`, and of the response's.
        `on_start` is called with the timeline of each request that begins.
        """
        async def recorded_request(
                method: bytes, url: str, params: Any = (), headers: Any = (),
                body: Any = empty_async_iterator, body_args: Any = (),
                **kwargs: Any) -> tuple[bytes, Fields, Any]:
            if isinstance(headers, Iterator):
                headers = tuple(headers)
            beginning = Beginning(self, headers, on_start)
            before = BEGINNING.get()
            BEGINNING.set(beginning)
            made = request(method, url, params=params, headers=headers, body=body,
                           body_args=body_args, **kwargs)
            try:
                code, fields, content = await made
            finally:
                # Not by a token: a coroutine that is dropped may end in another context.
                BEGINNING.set(before)
                timeline = beginning.timeline
                if timeline is not None and isinstance(body, streamed):
                    timeline.sent += body.data[:max_content]
            if timeline is not None and timeline.response is not None:
                timeline.response = timeline.response._replace(
                    reason=content.reason.decode('latin-1'))
                if max_content:
                    content = NotedBody(content, timeline.received, max_content)
            return code, fields, content

        return cast(AnyRequest, recorded_request)


class NotedBody:
    """The body of a response whose beginning is noted."""

    __slots__ = ('_body', '_noted', '_max_content')

    def __init__(self, body: Any, noted: bytearray, max_content: int) -> None:
        self._body = body
        self._noted = noted
        self._max_content = max_content

    def __repr__(self) -> str:
        return f'<NotedBody {len(self._noted)} bytes noted of {self._body!r}>'

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        chunk: bytes = await anext(self._body)
        self._noted += chunk[:self._max_content - len(self._noted)]
        return chunk

    async def aclose(self) -> None:
        await self._body.aclose()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)
