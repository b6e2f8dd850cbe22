# Made of lowhaio_sse.py by .ci/stubs.py.

from collections.abc import AsyncIterable, Awaitable, Callable, Iterator
from typing import Any, NamedTuple
from lowhaio import Fields, Headers, HttpDataError, Phase, Timeouts

__all__ = [
    'BodyEvents',
    'EventStream',
    'EventStreamError',
    'EventTooLong',
    'Parser',
    'ServerSentEvent',
    'events',
    'events_of',
]
Response = tuple[bytes, Fields, Any]
Outcome = Exception | tuple[bytes, Fields]
OnReconnect = Callable[[int, float, Outcome], object]

class EventStreamError(HttpDataError):
    response_started: bool
    phase: Phase | str
    is_lasting: bool
    code: bytes
    headers: Fields
    body: bytes

class EventTooLong(HttpDataError):
    response_started: bool
    phase: Phase | str
    is_lasting: bool

class ServerSentEvent(NamedTuple):
    type: str
    data: str
    id: str

class Parser:
    __slots__ = (
        'last_event_id',
        'retry',
        '_max_length',
        '_line',
        '_is_after_cr',
        '_has_begun',
        '_type',
        '_data',
        '_id',
        '_length',
        '__weakref__',
    )
    last_event_id: str
    retry: float | None
    def __init__(self, last_event_id: str = '', max_event_length: int = ...) -> None: ...
    def __repr__(self) -> str: ...
    def feed(self, chunk: bytes) -> Iterator[ServerSentEvent]: ...

def events_of(
    body: AsyncIterable[bytes],
    *,
    last_event_id: str = '',
    max_event_length: int = ...,
) -> BodyEvents: ...

class BodyEvents:
    __slots__ = ('_body', '_parser', '_found', '__weakref__')
    def __init__(self, body: AsyncIterable[bytes], parser: Parser) -> None: ...
    def __repr__(self) -> str: ...
    @property
    def last_event_id(self) -> str: ...
    @property
    def retry(self) -> float | None: ...
    def __aiter__(self) -> BodyEvents: ...
    async def __anext__(self) -> ServerSentEvent: ...
    async def aclose(self) -> None: ...

def events(
    request: Callable[..., Awaitable[Response]],
    url: str,
    *,
    method: bytes = b'GET',
    headers: Headers = (),
    last_event_id: str = '',
    max_silence: float | None = ...,
    max_event_length: int = ...,
    reconnects: bool | None = None,
    pause: float = 3,
    max_pause: float = 60,
    max_retry_after: float = 3600,
    jitter: float = 0.5,
    max_failures: int | None = None,
    on_reconnect: OnReconnect | None = None,
    timeouts: Timeouts | None = None,
    **kwargs: Any,
) -> EventStream: ...

class EventStream:
    __slots__ = (
        '_request',
        '_method',
        '_url',
        '_kwargs',
        '_options',
        '_last_event_id',
        '_retry',
        '_events',
        '_headers',
        '_failures',
        '_due',
        '_was_sent',
        '_is_read',
        '_is_closed',
        '__weakref__',
    )
    def __init__(
        self,
        request: Callable[..., Awaitable[Response]],
        method: bytes,
        url: str,
        kwargs: dict[str, Any],
        last_event_id: str,
        options: Options,
    ) -> None: ...
    def __repr__(self) -> str: ...
    @property
    def last_event_id(self) -> str: ...
    async def __aenter__(self) -> EventStream: ...
    async def __aexit__(self, *error: object) -> None: ...
    def __aiter__(self) -> EventStream: ...
    async def __anext__(self) -> ServerSentEvent: ...
    async def aclose(self) -> None: ...

class Options:
    __slots__ = (
        'reconnects',
        'pause',
        'max_pause',
        'max_retry_after',
        'jitter',
        'max_failures',
        'on_reconnect',
        'max_event_length',
    )
    reconnects: bool
    pause: float
    max_pause: float
    max_retry_after: float
    jitter: float
    max_failures: float
    on_reconnect: OnReconnect | None
    max_event_length: int
    def __init__(
        self,
        reconnects: bool,
        pause: float,
        max_pause: float,
        max_retry_after: float,
        jitter: float,
        max_failures: int | None,
        on_reconnect: OnReconnect | None,
        max_event_length: int,
    ) -> None: ...
    def seconds(self, failures: int, retry: float, outcome: Outcome) -> float: ...
