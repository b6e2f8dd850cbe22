# Made of lowhaio.py by .ci/stubs.py.

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NamedTuple, ParamSpec, Protocol

__version__: str
__all__ = [
    'Address',
    'Body',
    'BodyEnded',
    'BodySent',
    'Close',
    'ConnectionAttempted',
    'ConnectionClosed',
    'ConnectionFacts',
    'ConnectionReleased',
    'ConnectionTaken',
    'Dialer',
    'Event',
    'Fields',
    'GetConnection',
    'GetLoggerAdapter',
    'GetResolver',
    'GetResolverLoggerAdapter',
    'HeadReceived',
    'HeadSent',
    'Headers',
    'HttpConnectionClosedError',
    'HttpConnectionError',
    'HttpDataError',
    'HttpDnsError',
    'HttpError',
    'HttpHeaderTooLong',
    'HttpLoggerAdapter',
    'HttpTlsError',
    'NameResolved',
    'Params',
    'Phase',
    'PlaceAwaited',
    'Pool',
    'Request',
    'RequestFailed',
    'RequestStarted',
    'Resolve',
    'Response',
    'ResponseBody',
    'ResponseStarted',
    'Timeouts',
    'TlsNegotiated',
    'buffered',
    'canonical_host',
    'empty_async_iterator',
    'encode_params',
    'get_dns_resolver_default',
    'get_ssl_context_default',
    'has_arrived',
    'repeatable',
    'streamed',
    'timeout',
]

class Phase(StrEnum):
    REFUSED = 'refused'
    NAME = 'name'
    POOL = 'pool'
    CONNECT = 'connect'
    TLS = 'tls'
    SEND = 'send'
    BODY = 'body'
    HEAD = 'head'
    CONTENT = 'content'

class HttpError(Exception):
    reused: bool
    response_started: bool
    phase: Phase | str

class HttpConnectionError(HttpError): ...

class HttpDnsError(HttpConnectionError): ...

class HttpTlsError(HttpConnectionError): ...

class HttpDataError(HttpError): ...

class HttpConnectionClosedError(HttpDataError): ...

class HttpHeaderTooLong(HttpDataError): ...

class HttpLoggerAdapter(logging.LoggerAdapter):
    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None: ...
    def prefix(self, level: int) -> str: ...

class streamed:
    __slots__ = ('data', '__weakref__')
    data: bytes
    def __init__(self, data: bytes) -> None: ...
    def __repr__(self) -> str: ...
    def __call__(self) -> AsyncIterator[bytes]: ...

empty_async_iterator: streamed

def repeatable(
    body: Callable[P, AsyncIterator[bytes]],
    wrap: Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]] | None = None,
) -> Callable[P, AsyncIterator[bytes]]: ...

async def buffered(body: AsyncIterator[bytes]) -> bytes: ...

def has_arrived(body: AsyncIterator[bytes]) -> bool: ...

@contextlib.contextmanager
def timeout(loop: Loop, seconds: float) -> Iterator[Callable[[], None]]: ...

Fields = tuple[tuple[bytes, bytes], ...]
Params = Mapping[str, Any] | Sequence[tuple[str, Any]]
Headers = Iterable[tuple[bytes, bytes]]
Body = Callable[..., AsyncIterator[bytes]]
Address = IPv4Address | IPv6Address
Resolve = Callable[..., Awaitable[Iterable[Address]]]
Resolver = tuple[Resolve, Callable[..., Awaitable[None]]]
GetResolver = Callable[..., Resolver]
GetConnection = Callable[[str, str, int], Awaitable[socket.socket]]
GetLoggerAdapter = Callable[[dict[str, Any]], logging.LoggerAdapter[Any]]
GetResolverLoggerAdapter = Callable[[dict[str, Any]], GetLoggerAdapter]
Timeouts = Mapping[str, float | None]
Kwargs = Mapping[str, Any] | Iterable[tuple[str, Any]]
Loop = asyncio.AbstractEventLoop
P = ParamSpec('P')

class ConnectionFacts(NamedTuple):
    peer: Any
    local: Any
    tls_version: str | None
    cipher: tuple[str, str, int] | None
    certificate: bytes | None

class ResponseBody(Protocol):
    def __aiter__(self) -> AsyncIterator[bytes]: ...
    def __anext__(self) -> Coroutine[Any, Any, bytes]: ...
    @property
    def trailers(self) -> Fields: ...
    @property
    def http_version(self) -> bytes: ...
    @property
    def reason(self) -> bytes: ...
    @property
    def connection(self) -> ConnectionFacts: ...
    @property
    def request_sent(self) -> bool: ...
    def send(self, data: bytes) -> Coroutine[Any, Any, None]: ...
    def aclose(self) -> Coroutine[Any, Any, None]: ...

Response = tuple[bytes, Fields, ResponseBody]

class RequestStarted(NamedTuple):
    time: float
    request: int
    method: bytes
    origin: str
    target: bytes

class PlaceAwaited(NamedTuple):
    time: float
    request: int
    started: float
    error: BaseException | None

class NameResolved(NamedTuple):
    time: float
    request: int
    started: float
    host: str
    addresses: tuple[str, ...]
    error: BaseException | None

class ConnectionAttempted(NamedTuple):
    time: float
    request: int
    started: float
    peer: str
    connection: int | None
    error: BaseException | None

class TlsNegotiated(NamedTuple):
    time: float
    request: int
    started: float
    connection: int
    version: str | None
    cipher: str | None
    is_resumed: bool
    error: BaseException | None

class ConnectionTaken(NamedTuple):
    time: float
    request: int
    connection: int
    number: int
    facts: ConnectionFacts

class HeadSent(NamedTuple):
    time: float
    request: int
    size: int

class BodySent(NamedTuple):
    time: float
    request: int
    size: int

class ResponseStarted(NamedTuple):
    time: float
    request: int

class HeadReceived(NamedTuple):
    time: float
    request: int
    code: bytes
    http_version: bytes
    headers: Fields
    size: int

class BodyEnded(NamedTuple):
    time: float
    request: int
    size: int
    error: BaseException | None

class RequestFailed(NamedTuple):
    time: float
    request: int
    error: BaseException

class ConnectionReleased(NamedTuple):
    time: float
    connection: int
    origin: str

class ConnectionClosed(NamedTuple):
    time: float
    connection: int
    origin: str
    opened: float
    requests: int
    reason: str

Event = RequestStarted | PlaceAwaited | NameResolved | ConnectionAttempted | TlsNegotiated | ConnectionTaken | HeadSent | BodySent | ResponseStarted | HeadReceived | BodyEnded | RequestFailed | ConnectionReleased | ConnectionClosed

class Request(Protocol):
    def __call__(
        self,
        method: bytes,
        url: str,
        params: Params = (),
        headers: Headers = (),
        body: Body = ...,
        body_args: Iterable[Any] = (),
        body_kwargs: Kwargs = (),
        get_logger_adapter: GetLoggerAdapter = ...,
        get_resolver_logger_adapter: GetResolverLoggerAdapter = ...,
        *,
        timeouts: Timeouts | None = None,
        target: bytes | None = None,
        server_hostname: str | None = None,
    ) -> Coroutine[Any, Any, Response]: ...

class Close(Protocol):
    def __call__(
        self,
        get_logger_adapter: GetLoggerAdapter = ...,
        get_resolver_logger_adapter: GetResolverLoggerAdapter = ...,
    ) -> Coroutine[Any, Any, None]: ...

def get_dns_resolver_default(
    get_logger_adapter: GetLoggerAdapter,
    *,
    hosts: str = '/etc/hosts',
    resolv_conf: str = '/etc/resolv.conf',
    port: int = 53,
) -> Resolver: ...

def get_ssl_context_default() -> ssl.SSLContext: ...

def Pool(
    *,
    get_dns_resolver: GetResolver = ...,
    get_sock: Callable[[int], socket.socket] = ...,
    get_connection: GetConnection | None = None,
    get_ssl_context: Callable[[], ssl.SSLContext] = ...,
    http_version: bytes = b'HTTP/1.1',
    keep_alive_timeout: float = 15,
    recv_bufsize: int = ...,
    max_header_length: int = 16384,
    socket_timeout: float = 10,
    max_connections: int | None = None,
    max_connections_per_origin: int | None = None,
    pool_timeout: float | None = None,
    max_requests_per_connection: int | None = None,
    max_idle_connections: int | None = None,
    min_ttl: float = 1,
    max_stale: float = 30,
    max_grace: float = 60,
    max_lookups: int = 100,
    on_event: Callable[[Event], object] | None = None,
    get_logger_adapter: GetLoggerAdapter = ...,
    get_resolver_logger_adapter: GetResolverLoggerAdapter = ...,
) -> tuple[Request, Close]: ...

def Dialer(
    *,
    get_dns_resolver: GetResolver = ...,
    get_sock: Callable[[int], socket.socket] = ...,
    min_ttl: float = 1,
    max_stale: float = 30,
    max_lookups: int = 100,
    get_resolver_logger_adapter: GetResolverLoggerAdapter = ...,
) -> tuple[Callable[[str, int], Coroutine[Any, Any, socket.socket]], Callable[[str], Coroutine[Any, Any, tuple[Address, ...]]], Callable[[], Coroutine[Any, Any, None]]]: ...

def canonical_host(host: str) -> str: ...

def encode_params(params: Params, **options: Any) -> str: ...

def reason(cause: BaseException) -> str: ...
