# Made of lowhaio_websocket.py by .ci/stubs.py.

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any
from lowhaio import Fields, Headers, HttpConnectionClosedError, HttpDataError, Phase
from websockets.client import ClientProtocol

__all__ = [
    'WebSocket',
    'WebSocketClosedError',
    'WebSocketHandshakeError',
    'WebSocketProtocolError',
    'websocket',
]
Message = str | bytes
Fragments = Iterable[str] | Iterable[bytes] | AsyncIterable[str] | AsyncIterable[bytes]
Response = tuple[bytes, Fields, Any]

class WebSocketHandshakeError(HttpDataError):
    response_started: bool
    phase: Phase | str
    code: bytes
    headers: Fields
    body: bytes

class WebSocketClosedError(HttpConnectionClosedError):
    response_started: bool
    phase: Phase | str
    code: int
    reason: str

class WebSocketProtocolError(WebSocketClosedError): ...

def websocket(
    request: Callable[..., Awaitable[Response]],
    url: str,
    subprotocols: Iterable[str] = (),
    headers: Headers = (),
    *,
    max_message: int | None = ...,
    compression: bool = False,
    close_timeout: float = ...,
    **kwargs: Any,
) -> Opening: ...

class Opening:
    __slots__ = (
        '_request',
        '_url',
        '_subprotocols',
        '_headers',
        '_max_message',
        '_compression',
        '_close_timeout',
        '_kwargs',
        '_opened',
    )
    def __init__(
        self,
        request: Callable[..., Awaitable[Response]],
        url: str,
        subprotocols: tuple[str, ...],
        headers: Fields,
        max_message: int | None,
        compression: bool,
        close_timeout: float,
        kwargs: dict[str, Any],
    ) -> None: ...
    def __repr__(self) -> str: ...
    async def __aenter__(self) -> WebSocket: ...
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

class WebSocket:
    __slots__ = (
        'headers',
        '_body',
        '_frames',
        '_origin',
        '_close_timeout',
        '_lock',
        '_senders',
        '_reading',
        '_readable',
        '_writing',
        '_writable',
        '_written',
        '_begun',
        '_has_ended',
        '_is_receiving',
        '_waiters',
        '__weakref__',
    )
    headers: Fields
    def __init__(
        self,
        body: Any,
        protocol: ClientProtocol,
        headers: Fields,
        origin: str,
        close_timeout: float,
    ) -> None: ...
    def __repr__(self) -> str: ...
    def __iter__(self) -> Iterator[Any]: ...
    @property
    def subprotocol(self) -> str | None: ...
    @property
    def close_code(self) -> int | None: ...
    @property
    def close_reason(self) -> str | None: ...
    def __aiter__(self) -> AsyncIterator[Message]: ...
    async def __anext__(self) -> Message: ...
    async def receive(self) -> Message: ...
    async def send(self, message: Message | Fragments) -> None: ...
    async def ping(self, data: bytes | None = None, timeout: float = ...) -> float: ...
    async def close(self, code: int = 1000, reason: str = '') -> None: ...
