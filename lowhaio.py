"""A lightweight, streaming-first asyncio HTTP/1.1 client that creates no tasks.

::

    request, close = Pool()
    code, headers, body = await request(b'GET', 'https://example.com/')
    async for chunk in body:
        ...

One exchange, and this module, from top to bottom:

    request(method, url, params, headers, body)
      |  names              the host's addresses, for as long as they may be used
      |  idle connections   the one released last that may still be reused, or else a place
      |  connecting         to the first address that accepts, and TLS
      |  request head       the arguments, checked and turned into bytes
      |  sending            the head with the first chunk, then the other chunks, unless the
      |                     response comes before their end
      |  response head      status line and fields; interim responses are skipped
      |  framing            where the body ends, and whether the connection persists
      |  response body      decoded as it is read; at its last byte the connection
      v                     becomes idle, or closes
    (code, headers, body)

Everything runs in the task of the caller. What has to happen without a caller, such as the
expiry of an idle connection, is a callback of the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import re
import select
import socket
import ssl
import sys
import types
import warnings
import weakref
from asyncio import CancelledError, get_running_loop
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterable
from collections.abc import Generator, Iterator, Mapping, Sequence, Sized
from contextvars import Context, copy_context
from copy import copy
from enum import Enum, StrEnum
from errno import EMFILE, ENFILE
from functools import cache, partial, wraps
from heapq import heappop, heappush
from ipaddress import IPv4Address, IPv6Address
from math import inf
from time import monotonic
from traceback import clear_frames
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar
from weakref import WeakValueDictionary

__version__ = '0.1.0'
__all__ = [
    'Address', 'Body', 'BodyEnded', 'BodySent', 'Close', 'ConnectionAttempted', 'ConnectionClosed',
    'ConnectionFacts', 'ConnectionReleased', 'ConnectionTaken', 'Dialer', 'Event', 'Fields',
    'GetConnection', 'GetLoggerAdapter', 'GetResolver', 'GetResolverLoggerAdapter', 'HeadReceived',
    'HeadSent', 'Headers', 'HttpConnectionClosedError', 'HttpConnectionError', 'HttpDataError',
    'HttpDnsError', 'HttpError', 'HttpHeaderTooLong', 'HttpLoggerAdapter', 'HttpTlsError',
    'NameResolved', 'Params', 'Phase', 'PlaceAwaited', 'Pool', 'Request', 'RequestFailed',
    'RequestStarted', 'Resolve', 'Response', 'ResponseBody', 'ResponseStarted', 'Timeouts',
    'TlsNegotiated', 'buffered', 'canonical_host', 'empty_async_iterator', 'encode_params',
    'get_dns_resolver_default', 'get_ssl_context_default', 'has_arrived', 'repeatable', 'streamed',
    'timeout',
]

# ---------------------------------------------------------------------------------- limits

# Seconds until the next address is tried while the last one has not answered (RFC 8305 5).
CONNECTION_ATTEMPT_DELAY = 0.25
# Seconds for which a request body waits for 100 Continue, as some servers never send it (RFC 9110
# 10.1.1).
CONTINUE_TIMEOUT = 1
# Seconds that no option may exceed. They are some thirty years, so more of them are a mistake.
MAX_SECONDS = 1e9

# Interim (1xx) responses before the final one. Each of them may be as long as any head.
MAX_INTERIM_RESPONSES = 100
# Bytes of framing in a chunked body. Sane servers stay far below: even chunks of one byte have 5
# bytes of framing for 1 of content. A server that adds a long extension to each chunk does not.
MAX_FRAMING_OVERHEAD = 64 * 1024
MAX_FRAMING_OVERHEAD_RATIO = 16
# Bytes of a line of a chunked request body that does not come in one piece.
MAX_SENT_LINE = 16 * 1024
# Bytes of content in one TLS record (RFC 8446 5.1).
MAX_TLS_RECORD = 16 * 1024
# Bytes that an error shows of what the peer or the caller has given.
MAX_SHOWN = 60

# Bytes that one read asks for. From 128 KiB on, some allocators map memory for each read.
RECV_BUFSIZE = 120 * 1024
# glibc also maps and unmaps memory for each read, until it has seen a larger block being freed
# (mallopt(3), M_MMAP_THRESHOLD).
_ = bytes(1024 * 1024)
del _
# Bytes that one task moves before the others get a turn of the loop. More would starve them (this
# is some 0.3 ms of copying, or 1 ms of TLS), and less would cost throughput.
MAX_BURST = 1024 * 1024
# Each send and each read counts for so many bytes more, because the call itself takes time. So
# does each chunk that a request body is asked for.
COST_OF_CALL = 4 * 1024
# Reads that take the rest of a body that is closed. Over TLS each of them gives 16 KiB at most.
MAX_READS_OF_REST = 4
# Bytes of a request body that are gathered in memory, so that they leave at once, the first ones
# along with the head. As many of a longer chunk are copied for that. So many chunks are a burst.
MAX_GATHERED = 64 * 1024
MAX_GATHERED_CHUNKS = MAX_BURST // COST_OF_CALL

# Later requests that may overtake a request that waits, for each of max_connections. They reuse
# connections of their origin, and the request waits longer by the time of some ten responses. With
# four times as many requests as places, a higher number would not save another connection
# (benchmarks/connections.py).
MAX_OVERTAKING = 10

# Seconds that a lookup gets when there are stale addresses, before these are used: a reply that is
# lost is asked for again after half a second. Then it is asked again after pauses that double from
# one second up to the limit.
STALE_PATIENCE = 1
MAX_STALE_PAUSE = 8
# Seconds for which a lookup waits for A records when it has AAAA records.
PATIENCE_FOR_A = 1
# Seconds for which AAAA records are used when A has failed, before it is asked again.
MAX_INCOMPLETE = 5
# Seconds for which a pool remembers, at most, that a name does not exist.
MAX_MISSING = 5
# Seconds after which the hosts file is looked at again.
HOSTS_PAUSE = 1
# Seconds that each nameserver gets for a reply, in each round, and how many errors it may answer
# before it is not asked again.
WAITS = (0.5, 1, 2, 4)
MAX_ERRORS = 2
# Nameservers and domains of resolv.conf that are used, as by other resolvers.
MAX_NAMESERVERS = 3
MAX_SEARCH = 6
# Limits of its options `attempts` and `timeout`, as resolv.conf(5) has them.
MAX_ATTEMPTS = 5
MAX_TIMEOUT = 30
# Bytes of a reply by UDP, which has 512 of them, unless the nameserver does not care. Longer ones
# come by TCP.
MAX_DATAGRAM = 4096
# Labels of a name in a long reply, and pointers to labels. A name has at most 255 bytes (RFC 1035
# 2.3.4), and those that servers write have a pointer or two.
MAX_LABELS = 128
MAX_POINTERS = 16
# Bytes of the header of a reply (RFC 1035 4.1.1).
DNS_HEADER = 12

# Host names whose addresses a pool remembers, and origins whose TLS sessions it remembers.
MAX_NAMES = 1024
# URLs, origins and lines of response heads that a pool remembers parsed, and origins whose last
# heads it remembers. Longer ones are parsed each time, which makes this a limit in bytes too: it
# is some hundreds of kilobytes, and a few megabytes if servers make it as much as they can.
MAX_PARSED = 512
MAX_PARSED_LENGTH = 256
MAX_HEADS = 256
MAX_HEAD_LENGTH = 1024

# Up to these versions, CPython leaks some 6 KB of memory whenever a TLS session is read.
SESSIONS_ARE_LOST = sys.version_info < (3, 12, 8) or (3, 13) <= sys.version_info < (3, 13, 1)
# Resumptions that are worth that, because each of them saves 200 to 400 µs. If a session has
# served fewer, then 1, 3, 7 and so on connections pass before the next session is read. A server
# that never resumes one costs 10 sessions for the first 1,000 connections, and then 1 per 1,000.
WORTHWHILE_USES = 16
MAX_SESSION_PAUSE = 1023


# ---------------------------------------------------------------------------------- errors
#
# Each failure of a request is one of these errors, with the lower-level exception as its cause, or
# else a cancellation. The branch that an error is on tells whether the server may have seen the
# request. An exchange, and what opens its connection, choose the error.

class Phase(StrEnum):
    """How far a request had come when it failed. Each is a str, too: `error.phase == 'tls'`."""

    REFUSED = 'refused'
    """Its arguments, or the state of the pool, forbid it. A retry would not help."""
    NAME = 'name'
    """The addresses of its host were looked up."""
    POOL = 'pool'
    """It waited for a connection of the pool."""
    CONNECT = 'connect'
    """A connection was being made."""
    TLS = 'tls'
    """The TLS handshake."""
    SEND = 'send'
    """The request was being sent."""
    BODY = 'body'
    """The caller's own body failed, or yielded something else than the headers declare."""
    HEAD = 'head'
    """The head of the response was awaited, or read."""
    CONTENT = 'content'
    """The body of the response was read."""


class HttpError(Exception):
    """A request or its response failed. `__cause__` is the lower-level exception, if any."""

    reused = False
    """The connection had served an earlier request, so the peer may just have hung up."""

    response_started = False
    """At least one byte of the response had arrived. Interim responses count too."""

    phase: Phase | str = ''
    """How far the request had come. '' in an error that is not of this module."""


class HttpConnectionError(HttpError):
    """Not one byte of the request was handed to the kernel: it is always safe to retry."""


class HttpDnsError(HttpConnectionError):
    """The host name could not be resolved to an address."""


class HttpTlsError(HttpConnectionError):
    """The TLS handshake failed, or the peer's certificate was not accepted."""


class HttpDataError(HttpError):
    """At least one byte of the request may have been handed to the kernel."""


class HttpConnectionClosedError(HttpDataError):
    """The peer closed the connection before the end of the request or of the response."""


class HttpHeaderTooLong(HttpDataError):
    """A response head, a trailer section or a chunk-size line exceeds `max_header_length`."""


# -------------------------------------------------------------------------- public helpers
#
# Programs and layers use these around a request: loggers, request bodies, and `timeout`. They own
# nothing but the body that they wrap, and hand it to the request that it is given to.

class HttpLoggerAdapter(logging.LoggerAdapter):  # type: ignore[type-arg]
    """Prefixes messages with `[http]`, or with the values of `extra`: `[http:GET,URL]`.

    Above DEBUG, query strings are left out of the URLs, because they often hold credentials.
    """

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        if self.isEnabledFor(level):
            prefix = self.prefix(level)
            # Without arguments, logging does not format the message, so a % stays as it is.
            if args:
                prefix = prefix.replace('%', '%%')
            kwargs['stacklevel'] = kwargs.get('stacklevel', 1) + 1
            self.logger.log(level, f'{prefix} {msg}', *args, **kwargs)

    def prefix(self, level: int) -> str:
        values = [str(value) for value in (self.extra or {}).values()]
        if level > logging.DEBUG:
            values = [value.partition('?')[0] for value in values]
        return f'[http:{",".join(values)}]' if values else '[http]'


INFO = logging.INFO
LOGGER = logging.getLogger('lowhaio')


def get_logger_adapter_default(extra: dict[str, Any]) -> Adapter:
    return HttpLoggerAdapter(LOGGER, extra)


def get_resolver_logger_adapter_default(extra: dict[str, Any]) -> GetLoggerAdapter:
    http_adapter = HttpLoggerAdapter(logging.getLogger('aiodnsresolver'), extra)
    return lambda resolver_extra: dns().ResolverLoggerAdapter(http_adapter, resolver_extra)


class streamed:
    """A `body` function for a request that sends `data`, which is held in memory.

    It is a class so that a layer that needs the whole content in advance can find it: if
    `isinstance(body, streamed)`, then it is `body.data`.
    """

    __slots__ = ('data', '__weakref__')

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __repr__(self) -> str:
        return f'<streamed {len(self.data)} bytes>'

    async def __call__(self) -> AsyncIterator[bytes]:
        if self.data:
            yield self.data


empty_async_iterator = streamed(b'')
"""The `body` of a request without content."""


def repeatable(body: Callable[P, AsyncIterator[bytes]],
               wrap: Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]] | None = None,
               ) -> Callable[P, AsyncIterator[bytes]]:
    """Return a `body` function that raises if it is called again and `body` can not be.

    Layers use it, so that no request is sent without the content that it had before:

    - A layer that makes requests again wraps the `body` of each request that it is given.
    - A layer that encodes a body returns `repeatable(body, wrap)`. `wrap` is called with the
      async iterator that `body` has returned, and returns the one whose chunks are sent.

    A call raises ValueError if `body` returns the async iterator of an earlier call, or an async
    generator that has ended. An iteration raises ValueError at its end if it yielded no byte,
    although that of an earlier call for the same request did. Iterators are remembered by weak
    references. Of those that allow no weak reference, the last one is held. `streamed(data)` is
    returned as it is, and so is what can not be called.
    """
    if isinstance(body, RepeatableBody):
        return body.for_one_request() if wrap is None else RepeatableBody(
            body.body, (*body.wraps, wrap), body.returned, of_one_request=body.of_one_request)
    if wrap is not None:
        return RepeatableBody(body, (wrap,), WeakValueDictionary())
    is_safe = isinstance(body, streamed) or not callable(body)
    return body if is_safe else RepeatableBody(
        body, (), WeakValueDictionary(), of_one_request=True)


class RepeatableBody:
    """What `repeatable` returns: the function that is called, and what wraps its chunks."""

    __slots__ = ('body', 'wraps', 'returned', 'last', 'of_one_request', 'has_yielded')

    def __init__(self, body: Body,
                 wraps: tuple[Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]], ...],
                 returned: WeakValueDictionary[int, AsyncIterator[bytes]],
                 *, of_one_request: bool = False) -> None:
        self.body = body
        self.wraps = wraps
        # The keys are ids, because the iterators may have any __eq__, and no __hash__.
        self.returned = returned
        self.last: AsyncIterator[bytes] | None = None
        # Several requests may share a function, and it may well be empty for one of them. So
        # each request has its own object, which knows whether there was content for that one.
        self.of_one_request = of_one_request
        self.has_yielded = False

    def __repr__(self) -> str:
        return f'<repeatable {self.body!r}>'

    def for_one_request(self) -> RepeatableBody:
        return self if self.of_one_request else RepeatableBody(
            self.body, self.wraps, self.returned, of_one_request=True)

    def __call__(self, *args: Any, **kwargs: Any) -> AsyncIterator[bytes]:
        chunks = iterator_of(self.body(*args, **kwargs))
        if getattr(chunks, 'ag_frame', chunks) is None:
            raise ValueError(f'{NOT_NEW}, got one that has ended')
        if chunks is self.last or self.returned.get(id(chunks)) is chunks:
            raise ValueError(f'{NOT_NEW}, got that of an earlier call')
        try:
            self.returned[id(chunks)] = chunks
        except TypeError:
            self.last = chunks
        if self.of_one_request:
            chunks = WatchedChunks(chunks, self)
        for wrap in self.wraps:
            chunks = wrap(chunks)
        return chunks


NOT_NEW = 'body must return a new async iterator at each call'


class WatchedChunks:
    """The chunks of one call. As soon as one of them has bytes, they pass through unwatched."""

    __slots__ = ('chunks', 'body', 'is_empty')

    def __init__(self, chunks: AsyncIterator[bytes], body: RepeatableBody) -> None:
        self.chunks = chunks
        self.body = body
        self.is_empty = True

    def __repr__(self) -> str:
        return f'<WatchedChunks {"empty so far" if self.is_empty else "with content"}>'

    def __aiter__(self) -> WatchedChunks:
        return self

    def __anext__(self) -> Awaitable[bytes]:
        return self.watch() if self.is_empty else self.chunks.__anext__()

    async def watch(self) -> bytes:
        try:
            chunk = await self.chunks.__anext__()
        except StopAsyncIteration:
            if self.body.has_yielded:
                raise ValueError(f'{NOT_NEW}, got one that yielded nothing, unlike that of an '
                                 'earlier call') from None
            raise
        # What is no bytes counts as content here, because the request will refuse it.
        if not isinstance(chunk, bytes) or chunk:
            self.is_empty = False
            self.body.has_yielded = True
        return chunk

    async def aclose(self) -> None:
        if hasattr(self.chunks, 'aclose'):
            await self.chunks.aclose()


async def buffered(body: AsyncIterator[bytes]) -> bytes:
    """Return all that is left of a response body. The memory that this takes is not limited.

    Raises RuntimeError if the same body is given a second time, because it would seem empty.
    """
    if not isinstance(body, ReceivedBody):
        chunks = aiter(body)
        if not isinstance(chunks, ReceivedBody):
            return b''.join([chunk async for chunk in chunks])
        # This is the body of a layer that does not change the content.
        body = chunks
    if body._connection is None and body._error is None:
        # Most small bodies came whole with their heads. This saves two steps of the iterator.
        whole = body._chunk
        if whole is None:
            raise RuntimeError('the response body has been read: it can be read once, so keep '
                               'what buffered() returned')
    else:
        whole = b''.join([chunk async for chunk in body])
    body._chunk = None
    return whole


def has_arrived(body: AsyncIterator[bytes]) -> bool:
    """Whether all of a response body has arrived, so that reading it neither waits nor fails.

    False for what is not the body of a pool itself, but one that a layer has put around it. Layers
    use this where they would read a body before they return it.
    """
    return isinstance(body, ReceivedBody) and body._connection is None and body._error is None


@contextlib.contextmanager
def timeout(loop: Loop, seconds: float) -> Iterator[Callable[[], None]]:
    """Raise `asyncio.TimeoutError` from the block once it has run for `seconds`.

    Yields a function that starts the time anew. Like `asyncio.timeout`, it interrupts the block
    by a cancellation of the current task, which it takes back. A cancellation from outside wins.
    """
    task = asyncio.current_task(loop)
    if task is None:
        raise RuntimeError('timeout() must be used in a task')
    cancelling = task.cancelling()
    is_expired = False

    def expire() -> None:
        nonlocal is_expired
        is_expired = True
        task.cancel()

    timer = loop.call_later(seconds, expire)

    def reset() -> None:
        nonlocal timer
        if not is_expired:
            timer.cancel()
            timer = loop.call_later(seconds, expire)

    try:
        try:
            yield reset
        finally:
            timer.cancel()
            is_alone = is_expired and task.uncancel() <= cancelling
    except CancelledError as cause:
        if is_alone:
            raise TimeoutError(f'the block ran for more than {seconds:g} seconds') from cause
        raise


# ----------------------------------------------------------------------------------- types
#
# These are the types of what `Pool` and `request` take and return. Callers and layers can use them
# in annotations.

Fields = tuple[tuple[bytes, bytes], ...]
"""Pairs of name and value, both bytes, in their order. Names in a response are in lower case."""

Params = Mapping[str, Any] | Sequence[tuple[str, Any]]
"""What is added to the query of a URL, as for `urllib.parse.urlencode(params, doseq=True)`."""

Headers = Iterable[tuple[bytes, bytes]]
"""Pairs of name and value, both bytes, that a request is sent with."""

Body = Callable[..., AsyncIterator[bytes]]
"""`body(*body_args, **dict(body_kwargs))` returns the content of a request, chunk by chunk."""

Address = IPv4Address | IPv6Address
"""An address of a host. If it has an attribute `expires_at`, a time of the event loop, then it is
used for later requests until that time."""

Resolve = Callable[..., Awaitable[Iterable[Address]]]
"""`await resolve(host, record_type, get_logger_adapter=…)` returns the addresses of a host."""

Resolver = tuple[Resolve, Callable[..., Awaitable[None]]]
GetResolver = Callable[..., Resolver]
"""`get_dns_resolver(get_logger_adapter=…)` returns `resolve` and `clear_cache`."""

GetConnection = Callable[[str, str, int], Awaitable[socket.socket]]
"""`await get_connection(scheme, host, port)` returns a connected stream socket."""

GetLoggerAdapter = Callable[[dict[str, Any]], logging.LoggerAdapter[Any]]
"""`get_logger_adapter(extra)` returns a logger adapter."""

GetResolverLoggerAdapter = Callable[[dict[str, Any]], GetLoggerAdapter]
"""`get_resolver_logger_adapter(extra)` returns the `get_logger_adapter` of the resolver."""

Timeouts = Mapping[str, float | None]
"""Seconds for `'connect'`, `'read'`, `'write'` and `'pool'`. None is for never."""

Kwargs = Mapping[str, Any] | Iterable[tuple[str, Any]]
Loop = asyncio.AbstractEventLoop
Buffer = bytes | memoryview
Adapter = logging.LoggerAdapter[Any]
P = ParamSpec('P')
E = TypeVar('E', bound=HttpError)
K = TypeVar('K', bound=Sized)
V = TypeVar('V')


class ConnectionFacts(NamedTuple):
    """What is known of the connection of a response. It stays known when that has closed."""

    peer: Any
    """The address of the peer, as `getpeername` of the socket returned it."""
    local: Any
    """The address at this end, as `getsockname` of the socket returned it."""
    tls_version: str | None
    """Such as `'TLSv1.3'`. None without TLS, as the next two are."""
    cipher: tuple[str, str, int] | None
    """Its name, the version of TLS that has defined it, and the bits of its secret."""
    certificate: bytes | None
    """The certificate of the peer in DER form, whether or not it was verified."""


class ResponseBody(Protocol):
    """The content of a response, as an async iterator of bytes. A layer may return its own.

    Read it to its end, close it, or drop it. Once the last byte has been read, the connection can
    serve another request. If the response has come before the request was sent, then the reading
    goes on with the sending, and whoever does not read does not send.
    """

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Return the body itself."""

    def __anext__(self) -> Coroutine[Any, Any, bytes]:
        """Return what has arrived, which is at most `recv_bufsize` bytes.

        It ends when both the response and the sending have.
        """

    @property
    def trailers(self) -> Fields:
        """The fields after a chunked body, once it has ended."""

    @property
    def http_version(self) -> bytes:
        """That of the response, as it came: `b'HTTP/1.1'`."""

    @property
    def reason(self) -> bytes:
        """What follows the status code, as in `b'Not Found'`. Often empty."""

    @property
    def connection(self) -> ConnectionFacts:
        """The addresses and the TLS of its connection."""

    @property
    def request_sent(self) -> bool:
        """Whether all of the request has been sent. If not, it still is, or the response has ended
        the sending."""

    def send(self, data: bytes) -> Coroutine[Any, Any, None]:
        """Send data to the peer, after 101 Switching Protocols. One task may read meanwhile.

        Returns when all of it has been handed to the kernel, within the time to write of the
        request for each progress. Raises an `HttpDataError`. Once it has failed, or was cancelled,
        the connection is closed. After any other response it raises an error and does nothing.
        """

    def aclose(self) -> Coroutine[Any, Any, None]:
        """Close the connection, unless the whole response has arrived and the request was sent.

        It looks whether the rest of a small response has arrived, but never waits for it.
        The iterator of the request's body is closed, if it has not ended.
        """


Response = tuple[bytes, Fields, ResponseBody]
"""`(code, headers, body)`: the status code as three digits, the fields, and the body."""


# ---------------------------------------------------------------------------------- events
#
# What `on_event` of a pool is called with, when it has happened. All times are of
# `time.monotonic()`, in seconds: `started` is when the step began, and `time` is when it ended.
# Requests and connections have numbers, which count from 1 in each pool. `error` is None where
# the step has succeeded.

class RequestStarted(NamedTuple):
    """A request begins. It was not refused, and has awaited nothing yet."""

    time: float
    request: int
    method: bytes
    origin: str
    """Such as `'https://www.example.com:443'`."""
    target: bytes
    """The request target as it is sent, most often path and query. It may hold secrets."""


class PlaceAwaited(NamedTuple):
    """The request had to wait for a connection, because as many as allowed were in use."""

    time: float
    request: int
    started: float
    error: BaseException | None


class NameResolved(NamedTuple):
    """The addresses of the host were not known, or not fresh, and were looked up. It also comes if
    the request has shared the lookup of another one, or was given addresses that are stale."""

    time: float
    request: int
    started: float
    host: str
    addresses: tuple[str, ...]
    error: BaseException | None


class ConnectionAttempted(NamedTuple):
    """An attempt to connect has ended. There can be several at the same time, and one wins."""

    time: float
    request: int
    started: float
    peer: str
    """Address and port, as in `'192.0.2.1:443'`. Empty if only `get_connection` knows them."""
    connection: int | None
    """The number of the connection that was made. None with an `error`, and None without one if
    the attempt was given up, because another had won or the request was over."""
    error: BaseException | None


class TlsNegotiated(NamedTuple):
    """The TLS handshake of a new connection has ended."""

    time: float
    request: int
    started: float
    connection: int
    version: str | None
    """Such as `'TLSv1.3'`. None with an `error`."""
    cipher: str | None
    """Its name. None with an `error`."""
    is_resumed: bool
    """The session of an earlier connection was resumed."""
    error: BaseException | None


class ConnectionTaken(NamedTuple):
    """The request has its connection."""

    time: float
    request: int
    connection: int
    number: int
    """Of the request on this connection. 1 means that the connection is new."""
    facts: ConnectionFacts


class HeadSent(NamedTuple):
    """The head of the request was handed to the kernel."""

    time: float
    request: int
    size: int
    """In bytes."""


class BodySent(NamedTuple):
    """All of the request's body was handed to the kernel. It does not come if there is no body,
    or if a response has ended the sending."""

    time: float
    request: int
    size: int
    """In bytes, with the framing of a chunked body."""


class ResponseStarted(NamedTuple):
    """The first byte of a response has arrived, which may be that of an interim response."""

    time: float
    request: int


class HeadReceived(NamedTuple):
    """The head of the final response has arrived."""

    time: float
    request: int
    code: bytes
    http_version: bytes
    headers: Fields
    """They may hold secrets."""
    size: int
    """Of the head, in bytes."""


class BodyEnded(NamedTuple):
    """The response has ended. If it has not arrived whole, `error` tells why: reading it has
    failed, or it was closed or dropped."""

    time: float
    request: int
    size: int
    """Of the content that has arrived, in bytes. Framing does not count, content codings stay."""
    error: BaseException | None


class RequestFailed(NamedTuple):
    """`request` has raised, and there is no response."""

    time: float
    request: int
    error: BaseException
    """What it has raised: an `HttpError`, or what has ended it, such as a cancellation."""


class ConnectionReleased(NamedTuple):
    """The connection idles from now on, or goes to a request that waits."""

    time: float
    connection: int
    origin: str


class ConnectionClosed(NamedTuple):
    """A connection that was made has closed."""

    time: float
    connection: int
    origin: str
    opened: float
    """When it was made."""
    requests: int
    """How many it has served, or begun to."""
    reason: str
    """In words, such as `'keep_alive_timeout'`."""


Event = (
    RequestStarted | PlaceAwaited | NameResolved | ConnectionAttempted | TlsNegotiated
    | ConnectionTaken | HeadSent | BodySent | ResponseStarted | HeadReceived | BodyEnded
    | RequestFailed | ConnectionReleased | ConnectionClosed)
"""What `on_event` of a pool is called with."""


# ------------------------------------------------------------------------------------ Pool
#
# Wires the parts below together. It checks the options, and makes the books, the names and the
# connector of one pool. Each request takes a connection from them, makes an exchange of it, and
# owns the connection until it hands it to the response body. There is no protocol code here.

class Request(Protocol):
    """The type of `request`. A layer takes one and returns another."""

    def __call__(
            self, method: bytes, url: str, params: Params = (), headers: Headers = (),
            body: Body = empty_async_iterator, body_args: Iterable[Any] = (),
            body_kwargs: Kwargs = (),
            get_logger_adapter: GetLoggerAdapter = ...,
            get_resolver_logger_adapter: GetResolverLoggerAdapter = ..., *,
            timeouts: Timeouts | None = None, target: bytes | None = None,
            server_hostname: str | None = None,
    ) -> Coroutine[Any, Any, Response]:
        """Send a request. Return `(code, headers, body)` when the head of its response is here.

        - `method`: bytes, such as `b'GET'`.
        - `url`: str, `http` or `https`. Its path and query are sent as given, but what may not
          stand there is percent-encoded.
        - `params`: added to the URL's query, as for `urllib.parse.urlencode(params, doseq=True)`.
          Pairs of bytes are refused.
        - `headers`: pairs of name and value, bytes, sent as given. `host` is sent before them,
          unless it is among them.
        - `body`: called with `*body_args, **dict(body_kwargs)`, returns an async iterator of
          bytes. Its length must be told by a `content-length`, or it must be encoded already as
          `transfer-encoding: chunked` says. It is closed if it is not read to its end.
        - `get_logger_adapter`, `get_resolver_logger_adapter`: in place of those of the pool.
        - `timeouts`: a mapping of `'connect'` (for the lookup, connecting and the TLS handshake
          together), `'read'` (for the whole head of the response, and for each read of its body),
          `'write'` (for each progress of sending) and `'pool'` (for a connection of the pool) to
          seconds, or to None for never. What it does not have is as the pool's options say.
        - `target`: bytes that are sent as the request target in place of the path and the query
          of the URL, as given: the form for a proxy, `b'*'`, or what a signer has left as it is.
          Control characters and spaces are refused, and so are `params` beside it.
        - `server_hostname`: the name that TLS asks for and that the certificate must be for, in
          place of the URL's host. Connections are shared only with requests of the same name.

        `code` is three digits as bytes. The returned `headers` are pairs of lower-case name and
        value, bytes, in their order. The returned `body` is a `ResponseBody`, an async iterator of
        bytes: read it to its end, close it, or drop it. A response below 300 is returned although
        the request may not have been sent whole yet. Reading its body sends the rest.

        Raises an `HttpConnectionError` if not one byte was sent, as for bad arguments, an
        `HttpDataError` otherwise, or `asyncio.CancelledError`.
        """


class Close(Protocol):
    """The type of `close`."""

    def __call__(
            self, get_logger_adapter: GetLoggerAdapter = ...,
            get_resolver_logger_adapter: GetResolverLoggerAdapter = ...,
    ) -> Coroutine[Any, Any, None]:
        """Close the idle connections at once, and those in use when their responses end.

        Later requests raise an `HttpConnectionError`. So does this in another loop or thread
        than that of the pool, while the loop of the pool runs.
        """


def get_dns_resolver_default(
        get_logger_adapter: GetLoggerAdapter, *, hosts: str = '/etc/hosts',
        resolv_conf: str = '/etc/resolv.conf', port: int = 53) -> Resolver:
    """Return `resolve` and `clear_cache` of the resolver that a pool has by default.

    It answers by the hosts file, and by the nameservers and the search list of resolv.conf, both
    as they are now. With `functools.partial` it can be given other files, and another port of the
    nameservers.
    """
    resolver = LocalResolver(hosts, resolv_conf, port)
    return resolver.resolve, resolver.clear_cache


def get_sock_default(family: int) -> socket.socket:
    """Return a non-blocking TCP socket that sends at once, and notices a peer that is gone."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # The seconds of silence before the first probe. macOS calls the option TCP_KEEPALIVE.
        idle_option = getattr(socket, 'TCP_KEEPIDLE', getattr(socket, 'TCP_KEEPALIVE', None))
        if idle_option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, idle_option, 60)
    except BaseException:
        sock.close()
        raise
    return sock


def get_ssl_context_default() -> ssl.SSLContext:
    """Return a context that verifies certificates by the authorities that the system trusts."""
    context = ssl.create_default_context()
    context.hostname_checks_common_name = False
    # Some builds of Python leave this to OpenSSL's configuration, which may not limit it.
    context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)
    context.set_alpn_protocols(['http/1.1'])
    return context


def Pool(
        *,
        get_dns_resolver: GetResolver = get_dns_resolver_default,
        get_sock: Callable[[int], socket.socket] = get_sock_default,
        get_connection: GetConnection | None = None,
        get_ssl_context: Callable[[], ssl.SSLContext] = get_ssl_context_default,
        http_version: bytes = b'HTTP/1.1',
        keep_alive_timeout: float = 15,
        recv_bufsize: int = RECV_BUFSIZE,
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
        get_logger_adapter: GetLoggerAdapter = get_logger_adapter_default,
        get_resolver_logger_adapter: GetResolverLoggerAdapter =
        get_resolver_logger_adapter_default,
) -> tuple[Request, Close]:
    """Return two coroutine functions, `request` and `close`, of a new pool of connections.

    `Request` and `Close` describe them. A pool may be made before an event loop runs, and binds to
    the loop of its first request.

    All options are keywords. Times are in seconds, sizes in bytes:

    - `get_dns_resolver(get_logger_adapter=…)` returns `(resolve, clear_cache)`, as
      `aiodnsresolver.Resolver` does. It is called at the first host name that is no IP address.
    - `get_sock(family)` returns a non-blocking stream socket.
    - `get_connection(scheme, host, port)`, a coroutine function, returns a connected stream
      socket, in place of the lookup and of `get_sock`. TLS is added to it for https.
    - `get_ssl_context()` returns an `ssl.SSLContext`. It is called at the first https request.
    - `http_version`: `b'HTTP/1.1'` or `b'HTTP/1.0'`.
    - `keep_alive_timeout`: how long a connection may idle before it is closed. If the server tells
      its own time-out, a connection idles for a second less than that at most. 0: no connection
      is used again.
    - `recv_bufsize`: what one read asks for, and so the longest chunk of a response body.
    - `max_header_length`: of a response head, of a trailer section, and of a chunk-size line.
    - `socket_timeout`: for the lookup, connecting and the TLS handshake together; for each
      progress of sending; for the whole head of a response; for each read of its body.
    - `max_connections`, `max_connections_per_origin`: those that are idle, in use, or being
      opened. Requests beyond them wait for a connection, for at most `pool_timeout`. Those of one
      origin are served in the order in which they came. Those of another origin may overtake, but
      never more than 10 of them for each of `max_connections`. None: no limit.
    - `max_requests_per_connection`: after so many a connection is closed. None: no limit.
    - `max_idle_connections`: if more would idle, the one that has been idle longest is closed.
      0: none idles. None: no limit.
    - `min_ttl`: the addresses of a host are used for as long as its DNS records last, but for so
      long at least. That a name does not exist, or has no address, is remembered for so long, but
      for 5 seconds at most. 0: records that last for no time, and names without an address, are
      asked for with each request.
    - `max_stale`: when the nameservers give no answer, the last addresses are used for so long
      after their time. 0: not at all.
    - `max_grace`: for how long, at most, idle connections to an address are used that is missing
      in the last answer, if it came with others in an earlier one. It is also limited by the time
      for which that answer was fresh. 0: not at all.
    - `max_lookups`: how many questions the resolver is asked at the same time. A and AAAA of one
      name are two. Others wait for their turn.
    - `on_event(event)` is called with each `Event` when it has happened. What it raises goes to
      the exception handler of the loop. None: nothing is built for it.
    - `get_logger_adapter(extra)` returns a logger adapter for one request, or for the pool.
      `get_resolver_logger_adapter(extra)` returns such a function for the resolver.
    """
    settings = Settings(
        http_version, keep_alive_timeout, recv_bufsize, max_header_length, socket_timeout,
        pool_timeout, max_requests_per_connection)
    books = Books(
        checked_limit('max_connections', max_connections),
        checked_limit('max_connections_per_origin', max_connections_per_origin),
        checked_limit('max_idle_connections', max_idle_connections, 0),
        Heads(max_header_length))
    names = Names(get_dns_resolver, min_ttl, max_stale, max_grace, max_lookups)
    watch = None if on_event is None else Watch(on_event)
    parts = get_sock, get_connection, get_ssl_context, settings, names, books
    connector = Connector(*parts) if watch is None else WatchedConnector(watch, *parts)
    known = Known(http_version, settings.limits)
    bound_loop: Loop | None = None

    async def request(
            method: bytes, url: str, params: Params = (), headers: Headers = (),
            body: Body = empty_async_iterator, body_args: Iterable[Any] = (),
            body_kwargs: Kwargs = (),
            get_logger_adapter: GetLoggerAdapter = get_logger_adapter,
            get_resolver_logger_adapter: GetResolverLoggerAdapter = get_resolver_logger_adapter,
            timeouts: Timeouts | None = None, target: bytes | None = None,
            server_hostname: str | None = None,
    ) -> Response:
        nonlocal bound_loop
        try:
            if books.why_closed:
                raise RuntimeError(books.why_closed)
            loop = get_running_loop()
            if loop is not bound_loop:
                check_loop(loop, bound_loop)
                bound_loop = loop
                BOUND.add(books)
            if (headers or params or target is not None or server_hostname is not None
                    or method.__class__ is not bytes or url.__class__ is not str):
                origin, head, declared = build_head(
                    known, method, url, params, headers, target, server_hostname)
            else:
                origin, head, declared = known.plain[method, url]
            limits = settings.limits if timeouts is None else known.limits_of(timeouts)
        except Exception as cause:
            raise refusal(method, url, cause) from cause

        # Usually nobody listens to the log, and then the adapter is not even made.
        logger = None
        if get_logger_adapter is not get_logger_adapter_default or LOGGER.isEnabledFor(INFO):
            logger = make_logger(get_logger_adapter, method, url, origin)
        connection = connector.take_idle(origin, loop.time()) or \
            await connector.acquisition_type(
                connector, loop, method, origin, head, limits, logger,
                partial(get_resolver_logger_adapter, logger_extra(method, url))).run()
        exchange = connection.exchange_type(connection, method, declared, limits)
        sending: RequestBody | None = None
        try:
            if body is not empty_async_iterator or declared.has_body:
                sending = await send_with_body(
                    connection, exchange, head, body, body_args, body_kwargs)
            elif (count := connection.send_at_once(head)) < len(head):
                await connection.send(memoryview(head)[count:])
            if sending is None:
                exchange.doing = READING
            if exchange.decoder is None:
                deadline = loop.time() + limits.read
                if exchange.parser is None:
                    # Nothing can have come yet, so a read would find nothing.
                    await connection.wait(DATA, deadline)
                if exchange.decoder is None:
                    await read_head(connection, exchange, deadline)
            if exchange.parser is not None:
                exchange.remember_head()
            if connection.tls_session is not None:
                connection.store_session(connection.tls_session)
            # The response body may be kept for longer than the pool, and has no use for them.
            del exchange.books
            if sending is None and (exchange.decoder is WHOLE or exchange.is_received):
                connection.release()
                response_body = ReceivedBody(exchange)
            else:
                response_body = ArrivingBody(exchange, connection, sending)
            response = exchange.head.code, exchange.head.fields, response_body
        except BaseException as cause:
            connection.drop(sending)
            if not isinstance(cause, Exception):
                raise
            raise exchange.error(cause) from cause
        if logger is not None:
            log_response(logger, response)
        return response

    async def close(
            get_logger_adapter: GetLoggerAdapter = get_logger_adapter,
            get_resolver_logger_adapter: GetResolverLoggerAdapter = get_resolver_logger_adapter,
    ) -> None:
        try:
            try:
                get_logger_adapter({}).debug('Closing the pool')
            finally:
                if books.why_closed is not FORKED:
                    check_closable(bound_loop)
                    books.close()
                    await names.clear(get_resolver_logger_adapter)
        except HttpError:
            raise
        except Exception as cause:
            raise failed(HttpConnectionError, Phase.REFUSED,
                         f'closing the pool: {reason(cause)}') from cause

    request.__doc__, close.__doc__ = Request.__call__.__doc__, Close.__call__.__doc__
    return request if watch is None else watch.watched(request), close


def Dialer(
        *,
        get_dns_resolver: GetResolver = get_dns_resolver_default,
        get_sock: Callable[[int], socket.socket] = get_sock_default,
        min_ttl: float = 1,
        max_stale: float = 30,
        max_lookups: int = 100,
        get_resolver_logger_adapter: GetResolverLoggerAdapter =
        get_resolver_logger_adapter_default,
) -> tuple[Callable[[str, int], Coroutine[Any, Any, socket.socket]],
           Callable[[str], Coroutine[Any, Any, tuple[Address, ...]]],
           Callable[[], Coroutine[Any, Any, None]]]:
    """Return three coroutine functions, `connect`, `look_up` and `close`, which connect and look
    up names as a pool does.

    They are for a `get_connection` that has to connect to something else than the host of a URL,
    such as a proxy. `host` is a name or an IP address as `canonical_host` returns it.

    - `connect(host, port)` returns a non-blocking TCP socket, which the caller has to close. All
      addresses of the host are tried, as for a request. Raises an `HttpConnectionError`.
    - `look_up(host)` returns the addresses of the host, in the order in which `connect` would try
      them next. Raises an `HttpDnsError`.
    - `close()` clears the cache of the resolver.

    They have no time of their own. Inside of `get_connection` they end with the time to connect of
    the request, and elsewhere `asyncio.timeout` may end them. The options are those of a `Pool`.
    """
    settings = Settings(b'HTTP/1.1', 0, RECV_BUFSIZE, 16384, MAX_SECONDS, None, None)
    books = Books(inf, inf, inf, Heads(16384))
    names = Names(get_dns_resolver, min_ttl, max_stale, 0, max_lookups)
    connector = Connector(get_sock, None, get_ssl_context_default, settings, names, books)
    bound_loop: Loop | None = None

    def acquisition(host: str, port: int | None = None) -> Acquisition:
        nonlocal bound_loop
        loop = get_running_loop()
        if loop is not bound_loop:
            check_loop(loop, bound_loop)
            bound_loop = loop
        origin = Origin(f'http://{shown_address(host, 80 if port is None else port)}')
        origin.name = host if port is None else f'tcp://{shown_address(host, port)}'
        return Acquisition(
            connector, loop, b'CONNECT', origin, b'', settings.limits, None,
            partial(get_resolver_logger_adapter, logger_extra(b'CONNECT', origin.name)))

    async def connect(host: str, port: int) -> socket.socket:
        return (await acquisition(host, port).run()).give_away()

    async def look_up(host: str) -> tuple[Address, ...]:
        peers = await acquisition(host).find_peers()
        assert peers is not None
        peers.turn += 1
        return tuple(peers.in_turn(peers.turn - 1))

    async def close() -> None:
        await names.clear(get_resolver_logger_adapter)

    return connect, look_up, close


class Settings:
    """The options that connections follow. Times are in seconds, sizes in bytes."""

    __slots__ = ('persists_unasked', 'keep_alive_timeout', 'recv_bufsize', 'max_header_length',
                 'limits', 'max_requests')

    def __init__(self, http_version: bytes, keep_alive_timeout: float, recv_bufsize: int,
                 max_header_length: int, socket_timeout: float, pool_timeout: float | None,
                 max_requests_per_connection: int | None) -> None:
        if http_version not in (b'HTTP/1.1', b'HTTP/1.0'):
            raise ValueError(
                f"http_version must be b'HTTP/1.1' or b'HTTP/1.0', got {http_version!r}")
        # RFC 9112 9.3: after a request of HTTP/1.0 a server may close the connection, whatever
        # the version of its response, unless the response says that it persists.
        self.persists_unasked = http_version == b'HTTP/1.1'
        self.keep_alive_timeout = checked_seconds('keep_alive_timeout', keep_alive_timeout, 0)
        self.recv_bufsize = checked_count('recv_bufsize', recv_bufsize)
        self.max_header_length = checked_count('max_header_length', max_header_length)
        checked_seconds('socket_timeout', socket_timeout, 1e-9)
        self.limits = Limits(dict.fromkeys(('connect', 'read', 'write'), socket_timeout) | {
            'pool': checked_timeout('pool_timeout', pool_timeout)}, ())
        self.max_requests = checked_limit(
            'max_requests_per_connection', max_requests_per_connection)

    def __repr__(self) -> str:
        options = ' '.join(f'{name}={getattr(self, name)!r}' for name in self.__slots__)
        return f'<Settings {options}>'


def checked_seconds(name: str, value: float, minimum: float) -> float:
    if not isinstance(value, (int, float)) or not minimum <= value <= MAX_SECONDS:
        raise ValueError(f'{name} must be a number of seconds, got {value!r}')
    return value


class Limits:
    """The seconds that the phases of a request may take, and where these were given."""

    __slots__ = ('connect', 'read', 'write', 'pool', 'own')

    def __init__(self, seconds: Mapping[str, float], own: Collection[str]) -> None:
        self.connect = seconds['connect']
        self.read = seconds['read']
        self.write = seconds['write']
        self.pool = seconds['pool']
        # Those that the request was given, and not its pool.
        self.own = own

    def __repr__(self) -> str:
        return f'<Limits {" ".join(f"{kind}={getattr(self, kind):g}" for kind in TIMEOUTS)}>'

    def passed(self, kind: str) -> str:
        """What an error says."""
        name = f'timeouts[{kind!r}]' if kind in self.own else \
            'pool_timeout' if kind == 'pool' else 'socket_timeout'
        return f'{name}, {getattr(self, kind):g} seconds, passed'

    def late(self, kind: str) -> TimeoutError:
        return TimeoutError(self.passed(kind))


TIMEOUTS = ('connect', 'read', 'write', 'pool')


def parse_timeouts(limits: Limits, items: tuple[tuple[str, float | None], ...]) -> Limits:
    seconds = {kind: getattr(limits, kind) for kind in TIMEOUTS}
    for kind, value in items:
        if kind not in TIMEOUTS:
            raise ValueError(f'timeouts must have {", ".join(TIMEOUTS)} as keys, got {kind!r}')
        seconds[kind] = checked_timeout(f'timeouts[{kind!r}]', value)
    return Limits(seconds, dict(items))


def checked_timeout(name: str, value: float | None) -> float:
    """None is for never, which is as long as a time may be at all."""
    return MAX_SECONDS if value is None else checked_seconds(name, value, 0)


def checked_limit(name: str, value: int | None, minimum: int = 1) -> float:
    return inf if value is None else checked_count(
        name, value, f'a number, {minimum} or more, or None', minimum)


def checked_count(name: str, value: int, what: str = 'a number of bytes, 1 or more',
                  minimum: int = 1) -> int:
    if not isinstance(value, int) or value < minimum:
        raise ValueError(f'{name} must be {what}, got {value!r}')
    return value


def check_loop(loop: Loop, bound_loop: Loop | None) -> None:
    if bound_loop is not None:
        raise RuntimeError('the pool is bound to the event loop of its first request and can '
                           'not be used from another: make one Pool for each loop')
    if getattr(type(loop), 'add_reader', Loop.add_reader) is Loop.add_reader:
        raise RuntimeError('the event loop must have add_reader, as asyncio\'s selector loop '
                           f'and uvloop do: {type(loop).__name__} does not')


def check_closable(bound_loop: Loop | None) -> None:
    """Connections of a loop that no longer runs can be closed from any other loop."""
    try:
        if bound_loop is not None and bound_loop.is_running() and \
                get_running_loop() is not bound_loop:
            raise RuntimeError('the pool is bound to the event loop of its first request, which '
                               'is running: close it there')
    except RuntimeError as cause:
        raise failed(HttpConnectionError, Phase.REFUSED,
                     f'closing the pool, refused: {cause}') from cause


def make_logger(get_logger_adapter: GetLoggerAdapter, method: bytes, url: str,
                origin: Origin) -> Adapter:
    try:
        return get_logger_adapter(logger_extra(method, url))
    except Exception as cause:
        raise failed(HttpConnectionError, Phase.REFUSED,
                     f'{shown_method(method)} {origin.name}, {LOGGING.words}: {reason(cause)}'
                     ) from cause


def logger_extra(method: bytes, url: str) -> dict[str, Any]:
    return {'lowhaio_method': method.decode(), 'lowhaio_url': url}


def refusal(method: bytes, url: str, cause: Exception) -> HttpConnectionError:
    """Tell why nothing was sent. Of the URL only the origin is shown, as it may hold secrets."""
    where = ''
    with contextlib.suppress(TypeError, ValueError):
        where = f' {parsed_urls()[url][0].name}'
    return failed(HttpConnectionError, Phase.REFUSED,
                  f'{shown_method(method)}{where}, refused: {cause}')


def failed(kind: type[E], phase: Phase, message: str) -> E:
    error = kind(message)
    error.phase = phase
    return error


# ---------------------------------------------------------------------------- one exchange
#
# An exchange is one request and its response. `Exchange` follows both by their bytes alone, and
# knows no socket and no loop: how far each half has come, whether the connection may be used
# again, and why not. It is the only place that turns what went wrong into an HttpError.
#
# `request`, in `Pool`, moves the bytes. It owns the connection until it hands it to the response
# body, and closes it if the exchange fails.

async def read_head(connection: Connection, exchange: Exchange, deadline: float) -> None:
    """Read the rest of the head. Its time starts at the last byte sent, and starts anew with each
    interim response."""
    interims = 0
    while exchange.decoder is None:
        if exchange.interims > interims:
            interims = exchange.interims
            deadline = connection.read_end()
        await connection.read(deadline)


def log_response(logger: Adapter, response: tuple[bytes, Fields, ReceivedBody]) -> None:
    """Log that the response has come.

    If the adapter raises, the request fails, because the owner of the adapter would not hear of
    the error otherwise. The connection is then closed, unless the whole response has arrived.
    """
    code, _, body = response
    exchange = body._exchange
    try:
        logger.info('Received %s from %s', code.decode(), exchange.endpoint.shown)
        logger.debug('That was request %s of its connection', exchange.number)
    except BaseException as cause:
        exchange.doing = LOGGING
        if body._connection is not None:
            # No one gets the body, so it need not fail.
            body._connection.drop(body._sending)
        if not isinstance(cause, Exception):
            raise
        raise exchange.error(cause) from cause


class Doing(Enum):
    """What an exchange is doing, in the words of its errors, and what its phase is."""

    AWAITING_CONTINUE = 'waiting for 100 Continue', Phase.HEAD
    REQUEST_BODY = 'the request body', Phase.BODY
    SENDING = 'sending the request', Phase.SEND
    WAITING_FOR_BODY = 'waiting for the request body', Phase.SEND
    READING = 'reading the response', Phase.HEAD
    LOGGING = 'logging', Phase.HEAD

    def __init__(self, words: str, phase: Phase) -> None:
        self.words = words
        self.phase = phase


# In REQUEST_BODY and LOGGING the caller's own code runs, so an error is that of the caller. In
# WAITING_FOR_BODY the connection has failed while the caller's generator was awaited.
AWAITING_CONTINUE, REQUEST_BODY, SENDING, WAITING_FOR_BODY, READING, LOGGING = Doing


# Whether any byte of the request was handed to the kernel. A TLS write that fails may have handed
# over a part of its record.
Sent = Enum('Sent', 'NOTHING MAYBE SOMETHING')
SENT_NOTHING, SENT_MAYBE, SENT_SOMETHING = Sent


class Endpoint:
    """Where a connection leads to, and the options it goes by."""

    __slots__ = ('origin', 'peer', 'shown', 'settings', 'recv_bufsize', 'limits', 'facts')

    def __init__(self, origin: Origin, peer: str, where: str, settings: Settings,
                 limits: Limits) -> None:
        self.origin = origin
        # The address in the words of the resolver. Errors show it with the origin and the port.
        self.peer = peer
        self.shown = origin.name + (f' (peer {where})' if where else '')
        self.settings = settings
        # A read gives one TLS record at most, so one that asks for a byte more is never filled.
        self.recv_bufsize = min(settings.recv_bufsize, MAX_TLS_RECORD + 1) if origin.is_tls else \
            settings.recv_bufsize
        # Those of the request that the connection is opened for, or serves.
        self.limits = limits
        # Once the connection has been made.
        self.facts: ConnectionFacts

    def __repr__(self) -> str:
        return f'<Endpoint {self.shown}>'


class Exchange:
    """One request and its response: what was declared, sent and received of them.

    The connection feeds it with what arrives. The response may come while the request is being
    sent. A head of 300 or above ends the sending. Below 300 the sending goes on while the content
    is read. Then the end of the connection ends it only if the response is whole, and the last of
    its connection.
    """

    __slots__ = ('endpoint', 'books', 'method', 'declared', 'number', 'doing', 'sent',
                 'request_sent', 'parser', 'head', 'decoder', 'content')

    def __init__(self, connection: Connection, method: bytes, declared: Declared,
                 limits: Limits) -> None:
        connection.exchange = self
        self.endpoint = endpoint = connection.endpoint
        endpoint.limits = limits
        # They remember the last head of the origin. Set until the head of this response has come.
        self.books = connection.place.books
        self.method = method
        self.declared = declared
        # The first exchange of a connection has the number 1.
        self.number = connection.requests = connection.requests + 1
        self.doing = SENDING
        self.sent = SENT_NOTHING
        # False while the response has come first, and if it has ended the sending.
        self.request_sent = True
        # Made when the head begins to come, unless the head is the same as the last one.
        self.parser: HeadParser | None = None
        # Set when all of the head has come: the head, the decoder of the body, and the content
        # that has come before there is a response body to take it.
        self.head: Head
        self.decoder: Decoder | None = None
        self.content: bytes

    def __repr__(self) -> str:
        response = 'no response' if not self.has_started else \
            'response head' if self.decoder is None else \
            'response' if self.decoder.is_done else 'response body'
        return (f'<Exchange {shown_method(self.method)} {self.endpoint.shown}, request '
                f'{self.number}: sent {self.sent.name.lower()}, {response}, '
                f'{self.words(self.doing)}>')

    # What arrives

    def feed(self, data: bytes) -> bytes:
        """Take what has arrived, and return the content in it. No data means the end."""
        decoder = self.decoder
        if decoder is not None:
            return decoder.feed(data) if data else decoder.feed_end()
        if self.parser is None:
            # A head that is the same as the last one, byte by byte, is not parsed again.
            known = self.books.heads.get(self.endpoint.origin.name)
            if known is not None and data.startswith(known.data):
                if (len(data) == known.whole_length and known.method == self.method
                        and self.doing is READING):
                    # Most small responses arrive whole, and nothing is left to decode.
                    self.head = known
                    self.decoder = WHOLE
                    self.content = data[len(known.data):]
                else:
                    self.start_body(known, data[len(known.data):])
                return b''
        self.feed_head(data)
        return b''

    def feed_head(self, data: bytes) -> None:
        parser = self.parser or HeadParser(self.books.heads, self.declared.upgrade)
        if not data:
            is_asked_for = self.doing in (READING, AWAITING_CONTINUE)
            parser.feed_end('it' if is_asked_for else 'the response head')
        self.parser = parser
        head = parser.feed(data)
        if head is not None:
            self.start_body(head, parser.data)

    def start_body(self, head: Head, data: bytes) -> None:
        """Decide by the head how the body is framed, and if the connection may be used again."""
        if head.method != self.method:
            head = framed(head, self.method, self.endpoint.settings)
        self.head = head
        self.decoder = decoder = head.make_decoder(head.size)
        self.content = decoder.feed(data)

    def remember_head(self) -> None:
        """Store what the next exchanges with the origin need not parse again."""
        self.parser = None
        origin_name = self.endpoint.origin.name
        if self.number == 1:
            store_latest(self.books.answered, origin_name, True)
        self.books.heads.store(origin_name, self.head)

    @property
    def has_started(self) -> bool:
        """A byte of the response, or of an interim response, has arrived."""
        return self.parser is not None or self.decoder is not None

    @property
    def interims(self) -> int:
        return 0 if self.parser is None else self.parser.interims

    @property
    def is_continued(self) -> bool:
        return self.parser is not None and self.parser.is_continued

    @property
    def is_received(self) -> bool:
        """The whole response has arrived."""
        return self.decoder is not None and self.decoder.is_done

    @property
    def is_switched(self) -> bool:
        """The head of a 101 has come. What follows is not of HTTP."""
        return isinstance(self.decoder, SwitchedDecoder)

    @property
    def is_last(self) -> bool:
        """The request or the response says that the connection ends with the response."""
        return (self.declared.close or self.head.is_last
                or isinstance(self.decoder, CloseDecoder))

    @property
    def peer_has_ended(self) -> bool:
        """The peer has ended the connection, and so the response."""
        return self.is_received and isinstance(self.decoder, CloseDecoder)

    def may_be_cut_off(self, error: BaseException) -> bool:
        """The sending has failed with a reset. The system tells that once, and then reading finds
        an end, which is not that of a content that goes to the end of the connection."""
        return (isinstance(error, ConnectionResetError)
                and isinstance(self.decoder, CloseDecoder))

    def note_tls_write(self) -> None:
        """Note that a TLS write has not succeeded, or not yet. It may have sent a part of its
        record."""
        if self.sent is SENT_NOTHING:
            self.sent = SENT_MAYBE

    def blame_response(self, error: Exception) -> None:
        """Note that what came while the request was being sent is at fault, or the connection."""
        if isinstance(error, ValueError):
            self.doing = READING
        elif isinstance(error, (OSError, EOFError)) and self.doing is REQUEST_BODY:
            self.doing = WAITING_FOR_BODY

    # Whether the connection may be used again

    def may_reuse(self) -> bool:
        """The response has ended, and nothing forbids another request on the connection."""
        decoder = self.decoder
        return (self.head.keep_alive > 0 and not self.declared.close and self.request_sent
                and self.number < self.endpoint.settings.max_requests
                and decoder is not None and not decoder.has_surplus)

    # What went wrong

    def error(self, cause: BaseException, doing: Doing | None = None) -> HttpError:
        """What the caller gets to know of what the exchange was doing, or one half of it."""
        doing = doing or self.doing
        is_of_the_caller = doing in (REQUEST_BODY, LOGGING)
        kind = HttpConnectionError if self.sent is SENT_NOTHING else \
            HttpDataError if is_of_the_caller else \
            HttpHeaderTooLong if isinstance(cause, TooLong) else \
            HttpConnectionClosedError if isinstance(cause, PEER_CLOSED) else HttpDataError
        # Where the caller's own code failed, its error is not that of the connection.
        hint = '' if is_of_the_caller else \
            tls_hint(cause) if is_alert(cause) else \
            self.early_hint(doing) or self.plain_hint(kind, cause)
        phase = Phase.CONTENT if self.is_in_content(doing) else doing.phase
        error = failed(kind, phase, f'{shown_method(self.method)} {self.endpoint.shown}, '
                                    f'{self.words(doing)}: {reason(cause)}{hint}')
        error.reused = self.number > 1
        error.response_started = self.has_started
        return error

    def words(self, doing: Doing) -> str:
        if self.is_in_content(doing):
            return f'{READING.words} body'
        return f'{READING.words} head' if doing is READING else doing.words

    def is_in_content(self, doing: Doing) -> bool:
        return self.decoder is not None and doing in (READING, AWAITING_CONTINUE)

    def early_hint(self, doing: Doing) -> str:
        """The request was not sent whole, although the server's log may show a good response."""
        if (doing in (SENDING, WAITING_FOR_BODY) and self.decoder is not None
                and not self.request_sent):
            return f' (after the head of a response, {self.head.code.decode()})'
        return ''

    def plain_hint(self, kind: type[HttpError], cause: BaseException) -> str:
        """A port for TLS that is asked without TLS just closes, or sends an alert. It never
        answers."""
        origin = self.endpoint.origin
        if self.decoder is not None or origin.is_tls or origin.name in self.books.answered:
            return ''
        is_closed = kind is HttpConnectionClosedError and not self.has_started
        return ' (the port may be for https)' if is_closed or TLS_ALERT in str(cause) else ''


# RFC 8446 5.1, as errors show it.
TLS_ALERT = repr(b'\x15\x03')[:-1]

# The peer has ended the connection, in one of the ways that there are.
PEER_CLOSED = (EOFError, BrokenPipeError, ConnectionResetError, ssl.SSLEOFError,
               ssl.SSLZeroReturnError)


# ----------------------------------------------------------------------------------- names
#
# From the name of a host to its addresses. This part owns the resolver, and what it has said for
# as long as that may be used. Addresses without `expires_at`, which a resolver of the caller's may
# return, are asked for each time. `Acquisition` and `Race` get the addresses as `Peers`.
#
# An address has one of these ages. `Peers` tells which:
#
#     current    in the last answer, whose time is not over
#     recent     in an earlier answer of several, as of a nameserver that rotates them. Idle
#                connections to it may still be used, but no new ones are made
#     stale      in the last answer, whose time is over, while the nameservers give none

class Peers:
    """The current addresses of one host, by their text, in the order in which they are tried."""

    __slots__ = ('addresses', 'first_count', 'before', 'recent', 'expires_at', 'lifetime',
                 'unknown', 'took', 'failures', 'ask_at', 'turn')

    def __init__(self, turn: int = 0) -> None:
        self.addresses: dict[str, Address] = {}
        # So many of them came with the first answer. They are tried before the others.
        self.first_count = 0
        # The addresses that were current before these, for their order.
        self.before: dict[str, Address] = {}
        # Addresses that are no longer current, and until when they count as recent.
        self.recent: dict[str, float] = {}
        self.expires_at = inf
        # The seconds for which the answer was fresh, and those that the lookup took.
        self.lifetime = 0.0
        self.took = 0.0
        # The type of records, A or AAAA, that has not been asked for or was not answered.
        self.unknown = 'AAAA'
        # How many lookups have failed since the last that did not, and when the next one is due.
        self.failures = 0
        self.ask_at = -inf
        # How many races to this host have begun.
        self.turn = turn

    def __repr__(self) -> str:
        return (f'<Peers {", ".join(self.addresses)} until {self.expires_at:g}, '
                f'{f"{self.unknown} unknown" if self.unknown else "all"}, turn {self.turn}>')

    def renew(self, now: float, max_grace: float) -> None:
        """Forget the addresses for those of a new answer, which `add` adds."""
        grace = self.expires_at + min(self.lifetime, max_grace)
        self.recent = {text: until for text, until in self.recent.items() if now < until}
        if now < grace:
            # Where there is one address at a time, a new one means that the host has moved.
            counts = Counter(address.version for address in self.addresses.values())
            self.recent |= {text: grace for text, address in self.addresses.items()
                            if counts[address.version] > 1}
        self.before, self.addresses = self.addresses, {}
        self.first_count = 0
        self.expires_at = inf
        self.failures = 0
        self.ask_at = -inf

    def add(self, answer: Iterable[Address], now: float, min_ttl: float) -> None:
        """Add one answer of the resolver, in the order in which these addresses were before.

        Some nameservers rotate their answers, and that would undo the rotation of `in_turn`.
        """
        new = {text: address for address in answer
               if (text := str(address)) not in self.addresses}
        self.addresses |= {text: new[text] for text in self.before if text in new} | new
        self.first_count = self.first_count or len(self.addresses)
        expires_at = min((getattr(address, 'expires_at', -inf) for address in new.values()),
                         default=inf)
        if expires_at != -inf:
            # A time that is no number is over.
            expires_at = max(now + min_ttl, expires_at)
        self.expires_at = min(self.expires_at, expires_at)

    def is_recent(self, peer: str, now: float) -> bool:
        return now < self.recent.get(peer, -inf)

    def patience(self, seconds: float) -> float:
        """The seconds for a lookup that can be done without. A slow nameserver gets more."""
        return max(seconds, 2 * self.took)

    def in_turn(self, turn: int) -> list[Address]:
        """All addresses. In each turn an answer begins one later, so that all of it are used."""
        addresses = list(self.addresses.values())
        return [group[(turn + index) % len(group)]
                for group in (addresses[:self.first_count], addresses[self.first_count:])
                for index in range(len(group))]


def random_turn() -> int:
    """Many programs that start at the same time are not to begin all with the same address."""
    return int.from_bytes(os.urandom(2))


def fixed_peers(address: Address) -> Peers:
    """Those of an origin that has an address in place of a name."""
    peers = Peers()
    peers.addresses = {str(address): address}
    peers.first_count = 1
    peers.unknown = ''
    return peers


class Names:
    """What a pool knows of its hosts, and the questions that it asks its resolver."""

    __slots__ = ('get_dns_resolver', 'min_ttl', 'max_stale', 'max_grace', 'resolver', 'known',
                 'missing', 'looking_up', 'asking', 'turns_to_ask', 'asked')

    def __init__(self, get_dns_resolver: GetResolver, min_ttl: float, max_stale: float,
                 max_grace: float, max_lookups: int) -> None:
        self.get_dns_resolver = get_dns_resolver
        self.min_ttl = checked_seconds('min_ttl', min_ttl, 0)
        self.max_stale = checked_seconds('max_stale', max_stale, 0)
        self.max_grace = checked_seconds('max_grace', max_grace, 0)
        self.resolver: Resolver | None = None
        self.known: dict[str, Peers] = {}
        # Hosts without an address: until when that is remembered, and the error.
        self.missing: dict[str, tuple[float, type[Exception], str]] = {}
        # The hosts that are being looked up, and what the resolver is being asked, each with the
        # other requests that wait for the same.
        self.looking_up: dict[str, Waiting] = {}
        self.asking: dict[tuple[str, int], Waiting] = {}
        # It serves first the one that came first.
        self.turns_to_ask = asyncio.Semaphore(
            checked_count('max_lookups', max_lookups, 'a number, 1 or more'))
        # How many questions a resolver has been asked since its cache was cleared.
        self.asked = 0

    def __repr__(self) -> str:
        return f'<Names: {len(self.known)} known, {len(self.asking)} being asked for>'

    def fresh(self, origin: Origin, now: float) -> Peers | None:
        """The addresses of the origin, unless they have to be asked for."""
        if origin.peers is not None:
            return origin.peers
        peers = self.known.get(origin.host)
        return peers if peers is not None and now < peers.expires_at else None

    def stale(self, host: str, now: float) -> Peers | None:
        """The addresses of the host that may be used if there are no others to be had."""
        peers = self.known.get(host)
        return peers if peers is not None and now < peers.expires_at + self.max_stale else None

    def check_missing(self, host: str, now: float) -> None:
        if host in self.missing:
            until, kind, text = self.missing[host]
            if now < until:
                raise kind(text)
            del self.missing[host]

    def store(self, host: str, lookup: Lookup) -> Peers:
        # All requests to the host share one object, so that they take turns.
        peers = self.known.get(host) or Peers(random_turn())
        now = lookup.loop.time()
        peers.renew(now, self.max_grace)
        for _, answer in sorted(lookup.answers.items()):
            peers.add(answer, now, self.min_ttl)
        peers.unknown = ''.join(kind.name for kind in (dns().TYPES.A, dns().TYPES.AAAA)
                                if kind not in lookup.answers)
        if peers.unknown == 'A':
            # Its nameservers may have those in a moment, and they would be tried first.
            peers.expires_at = min(peers.expires_at, now + MAX_INCOMPLETE)
        peers.lifetime = peers.expires_at - now
        peers.took = now - lookup.began_at
        store_latest(self.known, host, peers)
        return peers

    def store_missing(self, host: str, cause: Exception, now: float) -> None:
        self.known.pop(host, None)
        if self.min_ttl:
            kind = dns().DnsNoMatchingAnswers if isinstance(cause, dns().DnsNoMatchingAnswers) \
                else dns().DnsRecordDoesNotExist
            until = now + min(self.min_ttl, MAX_MISSING)
            store_latest(self.missing, host, (until, kind, str(cause)))

    async def answer(self, loop: Loop, host: str, record_type: int,
                     get_resolver_adapter: Callable[[], GetLoggerAdapter]) -> list[Address]:
        """What the resolver returns or raises, for all who ask for the same at the same time."""
        async def ask() -> list[Address]:
            async with self.turns_to_ask:
                return await self.resolve(
                    loop.time(), host, record_type, get_resolver_adapter())

        return await shared(self.asking, (host, record_type), loop, ask)

    async def resolve(self, now: float, host: str, record_type: int,
                      get_logger_adapter: GetLoggerAdapter) -> list[Address]:
        if self.resolver is None:
            self.resolver = self.get_dns_resolver(get_logger_adapter=get_logger_adapter)
        resolver = self.resolver
        self.asked = (self.asked + 1) % MAX_NAMES
        if not self.asked:
            # The cache of a resolver has no limit of its own.
            await resolver[1](get_logger_adapter=get_logger_adapter)
        addresses = await self.ask(resolver, host, record_type, get_logger_adapter)
        if any(0 < getattr(address, 'expires_at', inf) < now for address in addresses):
            # From CPython 3.12 on, a resolver of aiodnsresolver's may keep an answer that came
            # after a failure until garbage is collected, also if its cache is cleared. (Addresses
            # from its hosts file expire at 0.)
            if self.resolver is resolver:
                self.resolver = self.get_dns_resolver(get_logger_adapter=get_logger_adapter)
                await resolver[1](get_logger_adapter=get_logger_adapter)
            addresses = await self.ask(self.resolver, host, record_type, get_logger_adapter)
        return addresses

    async def ask(self, resolver: Resolver, host: str, record_type: int,
                  get_logger_adapter: GetLoggerAdapter) -> list[Address]:
        try:
            addresses = list(await resolver[0](
                host, record_type, get_logger_adapter=get_logger_adapter))
        except dns().DnsError as cause:
            # aiodnsresolver's frames refer to the error, which refers to them.
            clear_frames(cause.__traceback__)
            if not isinstance(cause, dns().DnsTimeout):
                raise
            raise TimeoutError(
                str(cause) or 'no nameserver answered in the time that the resolver gives'
            ) from cause
        for address in addresses:
            if not isinstance(address, (IPv4Address, IPv6Address)):
                raise TypeError('the resolver must return IPv4Address and IPv6Address objects, '
                                f'got {type(address).__name__}')
        return addresses

    async def clear(self, get_resolver_adapter: GetResolverLoggerAdapter) -> None:
        self.known.clear()
        self.missing.clear()
        if self.resolver is not None:
            await self.resolver[1](get_logger_adapter=get_resolver_adapter({}))


class Failure(NamedTuple):
    """An error, and where it was raised first."""

    error: Exception
    traceback: types.TracebackType | None = None


# The deadlines of requests, in the order in which they came.
Waiting = dict[asyncio.Future[Any], float]


async def shared(asking: dict[K, Waiting], key: K, loop: Loop,
                 ask: Callable[[], Awaitable[V]], deadline: float = inf, why_late: str = '') -> V:
    """Return or raise what `ask` does, or what it did for the request that was the first to ask.

    If that is cancelled, or its deadline passes, the one that has the most time left asks.
    """
    answer: V | Failure | None = None
    try:
        if key in asking:
            answer = await await_answer(asking, key, loop, deadline, why_late)
            if isinstance(answer, Failure):
                # Otherwise its traceback would grow by the frames of each request that raises it.
                raise answer.error.with_traceback(answer.traceback)
            if answer is not None:
                return answer
        else:
            asking[key] = {}
        try:
            answer = await ask()
            return answer
        except Exception as error:
            if loop.time() < deadline:
                answer = Failure(error, error.__traceback__)
            raise
        finally:
            if answer is None:
                pass_turn(asking, key)
            else:
                give_to_all(asking.pop(key), answer)
    finally:
        # An error refers to this frame by its traceback, so this frame must not refer to it.
        answer = None


async def await_answer(asking: dict[K, Waiting], key: K, loop: Loop,
                       deadline: float, why_late: str) -> Any:
    """What another request has got, or its `Failure`. None if this one has to ask."""
    waiter = loop.create_future()
    asking[key][waiter] = deadline
    timer = None if deadline == inf else \
        loop.call_at(deadline, give_to, waiter, Failure(TimeoutError(why_late)))
    try:
        return await waiter
    except BaseException:
        if waiter.done() and not waiter.cancelled() and waiter.result() is None:
            pass_turn(asking, key)
        # Where the request was closed, this keeps the turn from it.
        give_to(waiter, None)
        raise
    finally:
        if timer is not None:
            timer.cancel()


def give_to_all(waiters: Iterable[asyncio.Future[Any]], answer: object) -> None:
    for waiter in waiters:
        give_to(waiter, answer)


def pass_turn(asking: dict[K, Waiting], key: K) -> None:
    """Let the request ask that has the most time left, or of these the one that came last.

    Another one would ask for the moment that it has left, and then the next one, and so on.
    """
    waiting = asking[key] = {
        waiter: deadline for waiter, deadline in asking[key].items() if not waiter.done()}
    if waiting:
        waiter = max(reversed(waiting), key=waiting.__getitem__)
        del waiting[waiter]
        give_to(waiter, None)
    else:
        del asking[key]


class Lookup:
    """Asks for the A records of one host, and for the AAAA records if they are needed.

    They are if there is no A record, if A has failed or is not answered soon, or if `wants_both`.
    Some nameservers answer only one of the two questions. But if it `needs_ipv4`, AAAA records do
    not do: there are stale addresses of IPv4, and those are known to work.
    """

    __slots__ = ('loop', 'names', 'host', 'deadline', 'why_late', 'wants_both', 'needs_ipv4',
                 'get_resolver_adapter', 'began_at', 'questions', 'ends', 'answers', 'failures')

    def __init__(self, loop: Loop, names: Names, host: str, deadline: float,
                 why_late: str, wants_both: bool, needs_ipv4: bool,
                 get_resolver_adapter: Callable[[], GetLoggerAdapter]) -> None:
        self.loop = loop
        self.names = names
        self.host = host
        self.deadline = deadline
        self.why_late = why_late
        self.wants_both = wants_both
        self.needs_ipv4 = needs_ipv4
        self.get_resolver_adapter = get_resolver_adapter
        self.began_at = loop.time()
        # By the type of the records: what is being asked, and until when.
        self.questions: dict[int, Resolving] = {}
        self.ends: dict[int, float] = {}
        # What came of it. That there are no such records is an empty answer, and a failure too.
        self.answers: dict[int, list[Address]] = {}
        self.failures: dict[int, Exception] = {}

    def __repr__(self) -> str:
        return (f'<Lookup of {self.host}: {len(self.questions)} being asked, '
                f'{len(self.answers)} answered, {len(self.failures)} failed>')

    async def run(self) -> None:
        """Ask. If there is no address, raise what tells most about the reason."""
        try:
            self.ask(dns().TYPES.A, self.deadline)
            while not self.advance(self.loop.time()):
                await self.wait()
            if not any(self.answers.values()):
                raise self.failure()
        finally:
            # By their tracebacks, they refer to this frame, which refers to them.
            self.failures.clear()
            for question in self.questions.values():
                await question.stop()

    def advance(self, now: float) -> bool:
        """Take what has come, and ask what is due. Whether it is over."""
        ipv4, ipv6 = dns().TYPES.A, dns().TYPES.AAAA
        for kind in list(self.questions):
            question = self.questions[kind]
            if now >= self.ends[kind] and not question.is_late:
                if self.ends[kind] < self.deadline:
                    question.why_late = f'no answer in {now - self.began_at:.2g} seconds'
                question.expire()
            self.step(kind)
        has_ipv4 = bool(self.answers.get(ipv4))
        has_failed = ipv4 in self.failures and ipv4 not in self.answers
        if has_failed and self.needs_ipv4:
            return True
        is_needed, end = True, self.deadline
        if has_ipv4:
            # There are addresses to connect to, so this gets only the time of one attempt.
            is_needed, end = self.wants_both, now + CONNECTION_ATTEMPT_DELAY
        elif has_failed:
            # It may be that the nameservers answer nothing. A slow one gets more time.
            end = now + max(CONNECTION_ATTEMPT_DELAY, 2 * (now - self.began_at))
        elif ipv4 in self.questions:
            is_needed = now >= self.began_at + CONNECTION_ATTEMPT_DELAY and not self.needs_ipv4
        if ipv6 in self.ends:
            self.ends[ipv6] = min(self.ends[ipv6], end)
        elif is_needed:
            self.ask(ipv6, end)
        if ipv4 in self.questions:
            return bool(self.answers.get(ipv6)) and now >= self.began_at + PATIENCE_FOR_A
        return ipv6 not in self.questions or has_ipv4 and not self.wants_both

    def ask(self, kind: int, end: float) -> None:
        self.ends[kind] = min(end, self.deadline)
        self.questions[kind] = Resolving(
            self.loop,
            self.names.answer(self.loop, self.host, kind, self.get_resolver_adapter),
            self.why_late)
        self.step(kind)

    def step(self, kind: int) -> None:
        question = self.questions[kind]
        if not question.is_ready():
            return
        try:
            question.step()
            return
        except StopIteration as stop:
            self.answers[kind] = stop.value
        except Exception as cause:
            self.failures[kind] = cause
            if isinstance(cause, dns().DnsRecordDoesNotExist):
                self.answers[kind] = []
            elif kind == dns().TYPES.A and not is_unanswered(cause):
                raise
        del self.questions[kind]

    async def wait(self) -> None:
        """Wait until a question can go on, or something is due."""
        ipv4, ipv6 = dns().TYPES.A, dns().TYPES.AAAA
        times = [self.ends[kind] for kind in self.questions if not self.questions[kind].is_late]
        if ipv4 in self.questions and not self.needs_ipv4:
            if ipv6 not in self.ends:
                times.append(self.began_at + CONNECTION_ATTEMPT_DELAY)
            elif self.answers.get(ipv6):
                times.append(self.began_at + PATIENCE_FOR_A)
        woken = self.loop.create_future()
        # A resolver that is late may take any time to end.
        timer = self.loop.call_at(min(times, default=self.deadline + MAX_SECONDS), wake, woken)
        first, *others = self.questions.values()
        unwatch = [other.watch(woken) for other in others]
        try:
            await first.wait(woken)
        except GeneratorExit:
            for other in others:
                other.abandon()
            raise
        finally:
            timer.cancel()
            for function in unwatch:
                function()

    def failure(self) -> Exception:
        """A nameserver that fails tells more than a record that does not exist."""
        failures = sorted(self.failures.values(),
                          key=lambda cause: isinstance(cause, dns().DnsRecordDoesNotExist))
        return failures[0] if failures else LookupError('the resolver returned no address')


def is_unanswered(cause: Exception) -> bool:
    """There was no answer that could be used. (A resolver of the caller's may forbid a name.)"""
    return isinstance(cause, (dns().DnsError, OSError)) and \
        not isinstance(cause, (dns().DnsRecordDoesNotExist, PermissionError))


@cache
def dns() -> Any:
    """Return the module of the resolver.

    It takes longer to import than this one, and is not needed for addresses and `get_connection`.
    """
    import aiodnsresolver
    return aiodnsresolver


RESPONSE_CODES: dict[object, str] = {
    1: 'format error (FORMERR)', 2: 'server failure (SERVFAIL)', 4: 'not implemented (NOTIMP)',
    5: 'refused (REFUSED)'}


def dns_reason(cause: Exception) -> str:
    """Why there is no address, in words, with the class of the resolver's error if it is one."""
    module = dns()
    if isinstance(cause, TimeoutError) and isinstance(cause.__cause__, module.DnsTimeout):
        tries = str(cause.__cause__)
        return reason(cause) if tries in str(cause) else f'{reason(cause)}: {tries}'
    if not isinstance(cause, module.DnsError):
        return reason(cause)
    text = str(cause)
    if isinstance(cause, module.DnsNoMatchingAnswers):
        words = 'the name has no address'
    elif isinstance(cause, module.DnsRecordDoesNotExist):
        words = 'there is no such name'
    elif isinstance(cause, module.DnsResponseCode):
        code, *nameserver = cause.args or ('unknown',)
        words = RESPONSE_CODES.get(code, f'response code {code}')
        text = ''.join(f'from {where}' for where in nameserver)
    elif isinstance(cause, module.DnsCnameChainTooLong):
        words = 'its chain of aliases is too long, or a loop'
    elif isinstance(cause, module.DnsSocketError):
        words, text = text or 'no nameserver can be reached', ''
    else:
        words, text = text or 'no usable answer came', ''
    return f'{words}{" " if text.startswith("from") else ": " if text else ""}{text} ' \
           f'({type(cause).__name__})'


# ---------------------------------------------------------------------- the local resolver
#
# The resolver of a pool, unless the caller gives one. It answers as `getaddrinfo` of the same
# machine would, by the files that say so: the hosts file first, then the nameservers and the
# search list of resolv.conf. What goes over the network is done by aiodnsresolver, by options of
# its own and some functions of its module that are replaced. It remembers only which nameservers
# answer, and which full name was found for a short one: `Names` has the addresses.

class LocalResolver:
    __slots__ = ('hosts', 'resolv_conf', 'full_names')

    def __init__(self, hosts: str, resolv_conf: str, port: int) -> None:
        self.hosts = HostsFile(hosts)
        self.resolv_conf = ResolvConf(resolv_conf, port)
        # By a name that is not full: the full one, and until when.
        self.full_names: dict[str, tuple[str, float]] = {}

    def __repr__(self) -> str:
        return f'<LocalResolver with {self.hosts} and {self.resolv_conf}>'

    async def resolve(self, host: str, record_type: int,
                      get_logger_adapter: GetLoggerAdapter) -> Sequence[Address]:
        now = get_running_loop().time()
        logger = get_logger_adapter({
            'aiodnsresolver_fqdn': host, 'aiodnsresolver_qtype': record_type})
        local = self.hosts.find(host, now, logger)
        # RFC 6761 6.3: these names are never asked of a nameserver.
        if local is None and (host == 'localhost' or host.endswith('.localhost')):
            local = LOOPBACK
        if local is not None:
            logger.info('Resolved %s on this machine: %s', host, local)
            return of_kind(local, record_type, now + HOSTS_PAUSE)
        self.resolv_conf.refresh(logger)
        names = self.resolv_conf.candidates(host)
        if names == [host]:
            return await self.ask(host, record_type, get_logger_adapter)
        name, until = self.full_names.get(host, ('', -inf))
        if name in names and now < until:
            return await self.ask(name, record_type, get_logger_adapter)
        name, kind, answer = await self.search(names, record_type, get_logger_adapter)
        until = min(getattr(address, 'expires_at', 0) for address in answer)
        store_latest(self.full_names, host, (name, max(until, now + 1)))
        if kind != record_type:
            raise dns().DnsNoMatchingAnswers(f'{name} has only addresses of the other kind')
        return answer

    async def clear_cache(self, get_logger_adapter: GetLoggerAdapter) -> None:
        self.full_names.clear()

    async def search(
            self, names: list[str], record_type: int, get_logger_adapter: GetLoggerAdapter,
    ) -> tuple[str, int, Sequence[Address]]:
        """The first of these names that has an address of either kind, which kind, and those."""
        other = dns().TYPES.AAAA if record_type == dns().TYPES.A else dns().TYPES.A
        failures = []
        try:
            for name in names:
                for kind in (record_type, other):
                    try:
                        answer = await self.ask(name, kind, get_logger_adapter)
                    except dns().DnsNoMatchingAnswers:
                        continue
                    except dns().DnsRecordDoesNotExist:
                        break
                    except dns().DnsResponseCode as cause:
                        failures.append(cause)
                        break
                    return name, kind, answer
            raise failures[0] if failures else dns().DnsRecordDoesNotExist(
                f'{", ".join(names)} were asked for')
        finally:
            # By their tracebacks, they refer to this frame.
            failures.clear()

    async def ask(self, name: str, record_type: int,
                  get_logger_adapter: GetLoggerAdapter) -> Sequence[Address]:
        return await Query(self.resolv_conf, name).run(record_type, get_logger_adapter)


LOOPBACK = IPv4Address('127.0.0.1'), IPv6Address('::1')
# The bytes of an address in the records of A and of AAAA, by their types.
LENGTHS = {1: 4, 28: 16}


def of_kind(addresses: Iterable[Address], record_type: int, expires_at: float) -> list[Address]:
    version, kind = (4, dns().IPv4AddressExpiresAt) if record_type == dns().TYPES.A else \
        (6, dns().IPv6AddressExpiresAt)
    found = [kind(str(address), expires_at=expires_at) for address in addresses
             if address.version == version]
    if not found:
        raise dns().DnsNoMatchingAnswers(f'the hosts file has only IPv{10 - version} addresses')
    return found


def file_stamp(path: str) -> tuple[int, ...]:
    """It differs when the file has changed. Empty if there is no file."""
    try:
        facts = os.stat(path)
    except OSError:
        return ()
    return facts.st_mtime_ns, facts.st_size, facts.st_ino, facts.st_dev


def read_lines(path: str, comments: bytes, logger: Adapter) -> Iterator[tuple[int, list[str]]]:
    """The number and the words of each line of a file that is not a comment."""
    try:
        with open(path, 'rb') as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return
    except PermissionError as error:
        logger.warning('%s is not used: %s', path, error)
        return
    for number, line in enumerate(lines, 1):
        words = re.split(b'[%s]' % comments, line, maxsplit=1)[0].decode(errors='replace').split()
        if words:
            yield number, words


class HostsFile:
    """The addresses of the hosts file, for as long as it does not change (hosts(5))."""

    __slots__ = ('path', 'stamp', 'look_at', 'addresses')

    def __init__(self, path: str) -> None:
        self.path = path
        self.stamp: tuple[int, ...] | None = None
        self.look_at = -inf
        # By the name in lower case, in the order of the lines.
        self.addresses: dict[str, tuple[Address, ...]] = {}

    def __repr__(self) -> str:
        return f'<HostsFile {self.path}: {len(self.addresses)} names>'

    def find(self, host: str, now: float, logger: Adapter) -> tuple[Address, ...] | None:
        if now >= self.look_at:
            stamp = file_stamp(self.path)
            if stamp != self.stamp:
                self.read(logger)
                self.stamp = stamp
            self.look_at = now + HOSTS_PAUSE
        return self.addresses.get(host)

    def read(self, logger: Adapter) -> None:
        self.addresses = {}
        # Files that block advertisements have the same address a hundred thousand times.
        parsed: dict[str, tuple[Address, ...]] = {}
        for number, (text, *names) in read_lines(self.path, b'#', logger):
            if text not in parsed:
                parsed[text] = tuple(parse_address(text))
            if not parsed[text]:
                logger.warning('%s, line %d: expected an IP address and names, got %r',
                               self.path, number, text[:MAX_SHOWN])
                continue
            for name in names:
                key = name.lower()
                self.addresses[key] = self.addresses.get(key, ()) + parsed[text]


def parse_address(text: str) -> list[Address]:
    """The address, if it is one."""
    with contextlib.suppress(ValueError):
        return [IPv6Address(text) if ':' in text else IPv4Address(text)]
    return []


class ResolvConf:
    """What resolv.conf says now (resolv.conf(5)), and which nameservers have answered."""

    __slots__ = ('path', 'port', 'stamp', 'nameservers', 'search', 'ndots', 'waits', 'rotates')

    def __init__(self, path: str, port: int) -> None:
        self.path = path
        self.port = port
        self.stamp: tuple[int, ...] | None = None
        # What a socket connects to, in the order in which they are asked.
        self.nameservers: list[tuple[Any, ...]] = []
        self.search: list[str] = []
        self.ndots = 1
        # The seconds that each nameserver gets in each round.
        self.waits: Sequence[float] = ()
        self.rotates = False

    def __repr__(self) -> str:
        return f'<ResolvConf {self.path}: {len(self.nameservers)} nameservers>'

    def refresh(self, logger: Adapter) -> None:
        stamp = file_stamp(self.path)
        if stamp != self.stamp:
            self.read(logger)
            self.stamp = stamp

    def read(self, logger: Adapter) -> None:
        nameservers: list[tuple[Any, ...]] = []
        self.search = []
        options: dict[str, str] = {}
        for number, (keyword, *values) in read_lines(self.path, b'#;', logger):
            if keyword == 'nameserver':
                found = []
                with contextlib.suppress(OSError):  # its zone is unknown
                    found = [sockaddr(address, self.port) for address in parse_address(
                        ' '.join(values[:1]))]
                nameservers += found
                if not found:
                    logger.warning('%s, line %d: expected the IP address of a nameserver, got %r',
                                   self.path, number, ' '.join(values)[:MAX_SHOWN])
            elif keyword in ('search', 'domain'):
                self.search = [name for value in values
                               if HOST_NAME.fullmatch(name := value.lower().removesuffix('.'))]
            elif keyword == 'options':
                options |= {name: value for name, _, value in
                            (option.partition(':') for option in values)}
        del nameservers[MAX_NAMESERVERS:], self.search[MAX_SEARCH:]
        self.nameservers = nameservers
        self.ndots = number_of(options, 'ndots', 1)
        self.rotates = 'rotate' in options
        attempts = min(max(number_of(options, 'attempts', len(WAITS)), 1), MAX_ATTEMPTS)
        seconds = min(number_of(options, 'timeout', 0), MAX_TIMEOUT)
        # With fewer attempts, these are the longest, which a slow nameserver needs.
        waits = WAITS[-attempts:] + WAITS[-1:] * (attempts - len(WAITS))
        self.waits = (seconds,) * attempts if seconds else waits

    def candidates(self, host: str) -> list[str]:
        """The full names that the host may mean, in the order in which they are asked for."""
        names = [f'{host}.{domain}' for domain in self.search if len(host) + len(domain) < 253]
        return [host, *names] if host.count('.') >= self.ndots else [*names, host]

    def has_answered(self, nameserver: tuple[Any, ...]) -> None:
        """It is asked first from now on, and those that failed before it last."""
        if nameserver in self.nameservers:
            index = self.nameservers.index(nameserver) + self.rotates
            self.nameservers = self.nameservers[index:] + self.nameservers[:index]


def number_of(options: dict[str, str], name: str, default: int) -> int:
    value = options.get(name, '')
    return int(value) if value.isdecimal() and len(value) < 10 else default


class Query:
    """Asks the nameservers for the records of one full name.

    It is done by a resolver of aiodnsresolver's that lives as long as the query, so that nothing
    of it is kept. Some functions of its module are replaced, but only for this resolver.
    """

    __slots__ = ('resolv_conf', 'name', 'nameserver', 'is_sent', 'tries', 'errors', 'failures',
                 'takes_cut')

    def __init__(self, resolv_conf: ResolvConf, name: str) -> None:
        self.resolv_conf = resolv_conf
        self.name = name
        # The one that is being asked, and whether it could be.
        self.nameserver: tuple[Any, ...] = ()
        self.is_sent = False
        # What came of each try, and the nameservers that have answered by an error, each time.
        self.tries: list[str] = []
        self.errors: list[tuple[Any, ...]] = []
        # What aiodnsresolver has caught, until the end.
        self.failures: list[BaseException] = []
        # What is in a truncated reply will do, because TCP was tried before.
        self.takes_cut = False

    def __repr__(self) -> str:
        return f'<Query for {self.name}: {", ".join(self.tries) or "no try"}>'

    async def run(self, record_type: int,
                  get_logger_adapter: GetLoggerAdapter) -> Sequence[Address]:
        module = dns()
        if not self.resolv_conf.nameservers:
            raise module.DnsError(f'there is no nameserver in {self.resolv_conf.path}')
        replaced = {
            # Both files have been read, and by other rules.
            'parse_etc_hosts': dict, 'parse_resolve_conf': tuple,
            'WeakValueDictionary': dict, 'socket': self.open_socket, 'pack': self.pack,
            'parse': self.parse, 'recvfrom': self.receive}
        make = types.FunctionType(module.Resolver.__code__, vars(module) | replaced,
                                  argdefs=module.Resolver.__defaults__)
        resolve, clear_cache = make(
            get_host=no_host, get_nameservers=self.nameservers, set_sock_options=no_options,
            transform_fqdn=mix_case, get_logger_adapter=get_silent_adapter)
        try:
            answer: Sequence[Address] = await resolve(
                self.name, record_type, get_logger_adapter=partial(self.log, get_logger_adapter))
            return answer
        except (module.DnsTimeout, module.DnsSocketError) as error:
            error.args = self.told(),
            raise
        except CancelledError as error:
            # It may be the end of the time to connect, whose error tells this.
            error.__cause__ = module.DnsTimeout(self.told())
            raise
        finally:
            # One of aiodnsresolver's frames has the error of the last try, which refers to it.
            while self.failures:
                clear_frames(self.failures.pop().__traceback__)
            # It cancels the timers that end what it has cached.
            await clear_cache(get_logger_adapter=get_silent_adapter)

    def log(self, get_logger_adapter: GetLoggerAdapter, extra: dict[str, Any]) -> QueryLog:
        adapter = get_logger_adapter(extra)
        return QueryLog(adapter if adapter.isEnabledFor(INFO) else SILENT, self.failures)

    def told(self) -> str:
        return f'no answer from nameserver {", ".join(self.tries)}'

    async def nameservers(self, _: object, fqdn: bytes) -> AsyncIterator[tuple[Any, ...]]:
        """How many seconds each try has, and which nameserver."""
        nameservers = self.resolv_conf.nameservers
        for seconds in self.resolv_conf.waits:
            for self.nameserver in nameservers:
                # An error may pass, but hardly within a moment.
                if self.errors.count(self.nameserver) < MAX_ERRORS:
                    self.is_sent = False
                    silent = f'{self.nameserver[0]} in {seconds:g} s'
                    self.tries.append(silent)
                    yield seconds, self.nameserver
                    if self.tries[-1] == silent and not self.is_sent:
                        self.tries[-1] = f'{self.nameserver[0]}, which can not be reached'

    def open_socket(self, _: int, kind: int) -> socket.socket:
        """aiodnsresolver knows no IPv6 nameservers."""
        try:
            return socket.socket(family_of(self.nameserver), kind)
        except OSError as cause:
            self.failed(reason(cause))
            raise dns().DnsSocketError() from cause

    def pack(self, message: Any) -> bytes:
        self.is_sent = True
        packed: bytes = dns().pack(message)
        return packed

    def parse(self, data: bytes) -> Any:
        """Parse a reply, and shorten the chain of aliases in it to one, or to the records."""
        if len(data) > 512:
            check_names(data)
        message = dns().parse(data)
        if any(len(record.rdata) != LENGTHS.get(record.qtype, len(record.rdata))
               for record in message.an):
            raise IndexError('an address of another length')
        aliases = {record.name.lower(): record for record in message.an
                   if record.qtype == dns().TYPES.CNAME}
        name = end = message.qd[0].name.lower() if message.qd else b''
        if name not in aliases:
            return message
        ttl = MAX_SECONDS
        while end in aliases:
            alias = aliases.pop(end)
            end, ttl = alias.rdata.lower(), min(ttl, alias.ttl)
        if end == name:
            raise dns().DnsCnameChainTooLong()
        found = tuple(
            record._replace(name=name, ttl=min(ttl, record.ttl)) for record in message.an
            if record.qtype == message.qd[0].qtype and record.name.lower() == end)
        return message._replace(an=found or (alias._replace(name=name, rdata=end, ttl=ttl),))

    async def receive(self, loop: Loop, sockets: Iterable[tuple[socket.socket, Any]],
                      size: int) -> tuple[Any, tuple[bytes, tuple[Any, ...]]]:
        """Receive a reply. An error of the nameserver ends the try at once."""
        module, where = dns(), f'nameserver {self.nameserver[0]}'
        try:
            query, (data, _) = await module.recvfrom(loop, sockets, MAX_DATAGRAM)
        except OSError as cause:
            self.failed(reason(cause))
            raise module.DnsSocketError() from cause
        if len(data) < DNS_HEADER or int.from_bytes(data[:2]) != query.qid:
            # It is not the reply, which aiodnsresolver sees, too, and waits on. A flood of these
            # must not keep the loop from all else.
            await asyncio.sleep(0)
            return query, (data, self.nameserver)
        is_truncated, has_answers = data[2] & 2, any(data[6:8])
        if is_truncated and not (has_answers and self.takes_cut):
            self.takes_cut = True
            self.tries[-1] += ', by TCP too'
            try:
                data = await self.ask_by_tcp(loop, query)
                self.takes_cut = False
            except (OSError, EOFError) as cause:
                if not has_answers:
                    self.failed(f'truncated, and by TCP {reason(cause)}')
                    raise module.DnsError(f'the reply of {where} was truncated, and it can not be '
                                          f'had by TCP: {reason(cause)}') from cause
        code = data[3] & 15
        if code not in (0, 3):
            self.failed(RESPONSE_CODES.get(code, f'response code {code}'))
            raise module.DnsResponseCode(code, where)
        self.resolv_conf.has_answered(self.nameserver)
        return query, (data, self.nameserver)

    def failed(self, why: str) -> None:
        self.tries[-1] = f'{self.nameserver[0]}: {why}'
        self.errors.append(self.nameserver)

    async def ask_by_tcp(self, loop: Loop, query: Any) -> bytes:
        with socket.socket(family_of(self.nameserver), socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                sock.connect(self.nameserver)
            writable = loop.create_future()
            loop.add_writer(sock, wake, writable)
            try:
                await writable
            finally:
                loop.remove_writer(sock)
            packed = self.pack(query)
            sock.send(len(packed).to_bytes(2) + packed)
            # Each message has its length before it (RFC 1035 4.2.2).
            reply = bytearray()
            while len(reply) < 2 or len(reply) < 2 + int.from_bytes(reply[:2]):
                _, (data, _) = await dns().recvfrom(loop, [(sock, query)], 65536)
                if not data:
                    raise EOFError('the connection was closed')
                reply += data
        if len(reply) < 2 + DNS_HEADER:
            raise EOFError('the reply is too short')
        return bytes(reply[2:])


def family_of(nameserver: tuple[Any, ...]) -> int:
    return socket.AF_INET6 if len(nameserver) == 4 else socket.AF_INET


def check_names(data: bytes) -> None:
    """Raise IndexError if a name of a reply is not plain, so that parsing would take very long.

    For each pointer in a name, aiodnsresolver looks at all the pointers before it. And pointers
    may make a short reply one of very many labels, so that it may have no more of them than bytes.
    """
    left = len(data)

    def end_of_name(at: int) -> int:
        nonlocal left
        end = pointers = labels = 0
        while labels < MAX_LABELS and pointers <= MAX_POINTERS:
            length = data[at]
            if length == 0:
                left -= labels
                if left < 0:
                    break
                return end or at + 1
            if length >= 192:
                end = end or at + 2
                at = (length - 192) * 256 + data[at + 1]
                pointers += 1
            else:
                at += 1 + length
                labels += 1
        raise IndexError('a name of too many labels')

    questions, *counts = (int.from_bytes(data[at:at + 2]) for at in range(4, DNS_HEADER, 2))
    at = DNS_HEADER
    for _ in range(questions):
        at = end_of_name(at) + 4
    for _ in range(sum(counts)):
        at = end_of_name(at) + 10
        kind, length = int.from_bytes(data[at - 10:at - 8]), int.from_bytes(data[at - 2:at])
        at = end_of_name(at) if kind == dns().TYPES.CNAME else at + length


async def no_host(*_: object) -> None:
    """The hosts file has been looked at already."""


def no_options(_: object) -> None:
    """Those that aiodnsresolver sets limit a reply to 512 bytes."""


async def mix_case(name: bytes) -> bytes:
    """Give letters a case by chance: a forged reply would have to match it."""
    # The bit that makes the case of a letter, for each letter.
    bits = int.from_bytes(name.translate(CASE_BITS)) & int.from_bytes(os.urandom(len(name)))
    return (int.from_bytes(name) ^ bits).to_bytes(len(name))


CASE_BITS = bytes(32 if chr(code).isascii() and chr(code).isalpha() else 0 for code in range(256))


class QueryLog:
    """aiodnsresolver warns of each try that fails, but others may not."""

    __slots__ = ('debug', 'info', 'failures')

    def __init__(self, adapter: Adapter, failures: list[BaseException]) -> None:
        self.debug = adapter.debug
        self.info = adapter.info
        self.failures = failures

    def warning(self, msg: object, *args: object) -> None:
        failure = sys.exception()
        if failure is not None:
            self.failures.append(failure)
        self.info(msg, *args)


def get_silent_adapter(extra: dict[str, Any]) -> Adapter:
    """For what aiodnsresolver logs when it is made. It is made for each query."""
    silent: Adapter = SILENT
    return silent


# A logger is quicker than an adapter of it, and has all methods that are called.
SILENT: Any = logging.Logger('', logging.CRITICAL + 1)


# ------------------------------------------------------- stepping what the caller gave us
#
# Runs a coroutine of the caller's code inside the caller's task. Most of them can simply be
# awaited. One is stepped by hand where something else may have to happen while it waits: a
# response comes, another connection is made, its time ends. The coroutine must not notice the
# difference, so this does for it what asyncio.Task does for its own. The owner of the steps waits
# in its place, and gets what it returns or raises.

class Steps:
    """Runs a coroutine in the current task, one step at a time."""

    __slots__ = ('loop', 'coroutine', 'waited_for', 'is_bare', 'to_throw', 'cancel_args',
                 'is_over')

    def __init__(self, loop: Loop, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.loop = loop
        self.coroutine = coroutine
        # What the coroutine waits for, unless that is only the next turn of the loop.
        self.waited_for: asyncio.Future[Any] | None = None
        self.is_bare = False
        # What the next step throws into the coroutine, if anything. A variable in the frame that
        # throws it would be in a cycle with its traceback, so it is popped from this list.
        self.to_throw: list[BaseException] = []
        # The arguments of the last CancelledError that the task got, or None if it got none. Who
        # cancelled a task may recognise the cancellation by them.
        self.cancel_args: tuple[Any, ...] | None = None
        self.is_over = False

    def __repr__(self) -> str:
        state = 'over' if self.is_over else 'ready' if self.is_ready() else \
            f'waiting for {self.waited_for or "the next turn"}'
        return f'<{type(self).__name__}: {self.coroutine!r}, {state}>'

    def step(self) -> None:
        """Run until it waits, or ends: by StopIteration with its value, or by its exception."""
        # This future may have failed with the error that ends the step. The traceback of that
        # error has this frame, which has the future: it would be a cycle.
        self.waited_for = None
        try:
            waited_for = self.resume()
        except BaseException:
            self.is_over = True
            raise
        self.suspend(waited_for)

    def suspend(self, waited_for: Any) -> None:
        """It has yielded what it waits for."""
        error = None if waited_for is None else not_awaitable(waited_for, self.loop)
        if error is not None:
            self.to_throw = [error]
        # After a bare yield, as that of sleep(0), it goes on in the next turn of the loop. So it
        # does when it has to hear that it can not wait for this: it may try again and again.
        self.is_bare = waited_for is None or error is not None
        if not self.is_bare:
            waited_for._asyncio_future_blocking = False
            self.waited_for = waited_for

    def resume(self) -> Any:
        return self.coroutine.throw(self.to_throw.pop()) if self.to_throw else \
            self.coroutine.send(None)

    def watch(self, woken: asyncio.Future[None]) -> Callable[[], object]:
        """Set the result of `woken` when it is ready. Return the function that undoes this."""
        def on_ready(_: object = None) -> None:
            self.is_bare = False
            wake(woken)

        waited_for = self.waited_for
        if waited_for is None:
            return self.loop.call_soon(on_ready).cancel
        waited_for.add_done_callback(on_ready)
        return partial(waited_for.remove_done_callback, on_ready)

    def is_ready(self) -> bool:
        """A step would get it further."""
        return not self.is_bare and (
            self.waited_for is None or self.waited_for.done() or bool(self.to_throw))

    def interrupt(self, args: tuple[Any, ...] = ()) -> None:
        """Cancel what it waits for. Where that can not be, the next step cancels the coroutine."""
        if self.waited_for is None or not self.waited_for.cancel(*args[:1]):
            self.to_throw = [CancelledError(*args)]
            self.is_bare = False

    async def wait(self, woken: asyncio.Future[None] | None) -> None:
        """Wait until it is ready, or something else has set the result of `woken`. Without that,
        wait for one turn of the loop.

        A cancellation of the task is passed on to the coroutine. Its next step tells what comes of
        that.
        """
        waited_for = self.waited_for
        try:
            if waited_for is None or woken is None:
                await asyncio.sleep(0)
                self.is_bare = False
                return
            on_ready = partial(wake, woken)
            waited_for.add_done_callback(on_ready)
            try:
                await woken
            finally:
                waited_for.remove_done_callback(on_ready)
        except CancelledError as error:
            self.cancel_args = error.args
            self.interrupt(error.args)
        except GeneratorExit:
            self.abandon()
            raise

    async def run(self) -> Any:
        """Run it to its end."""
        while True:
            while not self.is_ready():
                await self.wait(self.loop.create_future())
            try:
                self.step()
            except StopIteration as stop:
                return stop.value

    def abandon(self) -> None:
        """Cancel it where nothing can be awaited, again if it goes on, but not for ever."""
        for _ in range(10):
            if not self.is_over:
                with contextlib.suppress(CancelledError, Exception):
                    # The loop may be closed.
                    self.interrupt()
                self.to_throw = [CancelledError()]
                with contextlib.suppress(CancelledError, Exception):
                    self.step()
        self.is_over = True
        # It ends here if it has not yet, and not when it is collected: others may wait for it.
        with contextlib.suppress(CancelledError, Exception):
            self.coroutine.close()


def not_awaitable(waited_for: Any, loop: Loop) -> RuntimeError | None:
    """What asyncio's Task throws, in its words, if its coroutine waits for what never ends."""
    is_blocking = getattr(waited_for, '_asyncio_future_blocking', None)
    what = type(waited_for).__name__
    if is_blocking is None:
        return RuntimeError(f'Task got bad yield: {what}')
    if waited_for.get_loop() is not loop:
        return RuntimeError(f'Task got {what} attached to a different loop')
    if not is_blocking:
        return RuntimeError(f'yield was used instead of yield from in task with {what}')
    if waited_for is asyncio.current_task(loop):
        return RuntimeError('Task cannot await on itself')
    return None


class InTime(Steps):
    """Runs a coroutine up to a deadline. Then the coroutine is cancelled, but not the task."""

    __slots__ = ('why_late', 'is_late')

    def __init__(self, loop: Loop, coroutine: Coroutine[Any, Any, Any], why_late: str) -> None:
        super().__init__(loop, coroutine)
        # What the error after the deadline says.
        self.why_late = why_late
        self.is_late = False

    async def run_until(self, deadline: float) -> Any:
        timer = self.loop.call_at(deadline, self.expire)
        try:
            return await self.run()
        finally:
            timer.cancel()

    def expire(self) -> None:
        self.is_late = True
        self.interrupt()

    async def stop(self) -> None:
        """Cancel it and let it clean up. What it returns or raises is ignored."""
        if not self.is_over:
            self.expire()
            with contextlib.suppress(Exception):
                await self.run()

    def step(self) -> None:
        try:
            super().step()
        except CancelledError as error:
            if not self.is_late:
                raise
            # A cancellation of the task wins, also if the coroutine went on after that.
            if self.cancel_args is not None:
                raise CancelledError(*self.cancel_args) from None
            raise TimeoutError(self.why_late) from error.__cause__


class Resolving(InTime):
    """Runs the resolver, which cancels the current task, as the current task.

    For the time-out of a nameserver, aiodnsresolver calls `asyncio.current_task().cancel()`,
    catches the CancelledError, and asks the next one. It never calls `uncancel`. If it were
    awaited, the caller's task would count a cancellation that nobody has made, and
    `asyncio.timeout` or a TaskGroup around the request would fail. To call `uncancel` for it is
    not enough: a cancellation that somebody made in the same turn of the loop looks the same, and
    the resolver takes that for its own time-out, too.

    So what the resolver sees as the current task, while it is stepped, is this. asyncio documents
    `_enter_task` and `_leave_task` for whatever steps a coroutine. Thus its own cancellations
    come to `cancel`, and those of others to `interrupt`, and the caller's task counts only the
    latter. Only if one of each come in the same turn does the coroutine see one cancellation for
    both: if it goes on after that, it is cancelled again.
    """

    __slots__ = ('task', 'own', 'is_own_due', 'is_other_due', '__weakref__')

    def __init__(self, loop: Loop, coroutine: Coroutine[Any, Any, Any], why_late: str) -> None:
        super().__init__(loop, coroutine, why_late)
        self.task: Any = current_task()
        # How many cancellations the coroutine has made, and not taken back.
        self.own = 0
        # Which cancellations the next step tells of: the coroutine's own, and those of others.
        self.is_own_due = self.is_other_due = False

    # As a task

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def __await__(self) -> Any:
        return self.task.__await__()

    def cancel(self, msg: Any = None) -> bool:
        if self.is_over:
            return False
        self.own += 1
        self.is_own_due = True
        super().interrupt(() if msg is None else (msg,))
        return True

    def cancelling(self) -> int:
        # After its end it has no task.
        others: int = 0 if self.is_over else self.task.cancelling()
        return others + self.own

    def uncancel(self) -> int:
        self.own = max(self.own - 1, 0)
        return self.cancelling()

    # As steps

    def interrupt(self, args: tuple[Any, ...] = ()) -> None:
        self.is_other_due = True
        super().interrupt(args)

    def expire(self) -> None:
        # It may be about to go on after a time-out of its own, and there is no time for that.
        self.is_own_due = True
        super().expire()

    def step(self) -> None:
        is_ambiguous = self.is_own_due and self.is_other_due
        self.is_own_due = self.is_other_due = False
        try:
            super().step()
        except Exception:
            if self.cancel_args is None:
                raise
            # It went on after a cancellation of the task, but that is not to be lost.
            raise CancelledError(*self.cancel_args) from None
        finally:
            if self.is_over:
                # A frame of an error may refer to this, and the task will refer to the error.
                self.task = None
        if is_ambiguous:
            self.interrupt(self.cancel_args or ())

    def resume(self) -> Any:
        # The resolver leaves async generators unfinished. The loop's hooks would close them in
        # tasks. Without the hooks they are closed when they are collected.
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(None, None)
        try:
            return self.resume_as_task() if runs_here(self.loop) else super().resume()
        finally:
            sys.set_asyncgen_hooks(*hooks)

    def resume_as_task(self) -> Any:
        stand_in: Any = self
        # None where the coroutine is dropped, in a callback of the loop.
        task = asyncio.current_task(self.loop)
        if task is not None:
            asyncio._leave_task(self.loop, task)
        asyncio._enter_task(self.loop, stand_in)
        try:
            return super().resume()
        finally:
            asyncio._leave_task(self.loop, stand_in)
            if task is not None:
                asyncio._enter_task(self.loop, task)
            # The task may end with an error that has this frame in its traceback.
            del task


def runs_here(loop: Loop) -> bool:
    """The loop runs, and in this thread."""
    try:
        return get_running_loop() is loop
    except RuntimeError:
        return False


def current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


# ------------------------------------------------------------- the connections of one pool
#
# The books of one pool: which connections are idle, how many places are taken, and which requests
# wait for one. It opens and reads nothing itself. It lends a connection, or a place for a new one,
# to the acquisition of a request, and gets it back when the connection is idle again or closed.
#
# Each connection has a place, from before it is opened until it is closed. If all places are
# taken, a request waits. Within an origin, the idle connection that was returned last is lent
# first, so that the ones that are not needed expire. Invariant: while a request waits and its
# origin has room, nothing is idle and no place is free.
#
# A place that is returned goes to the request that has waited longest. A connection that is
# returned goes to the request of its own origin that has waited longest, because that saves a new
# connection. But a request of another origin may have waited longer, and be overtaken again and
# again. Each request that waits has a ticket, a number that counts up. If the two tickets differ
# by more than MAX_OVERTAKING for each place, the connection is closed and its place goes to the
# other request.

class OriginBooks:
    """The part of the books that is about one origin. Who holds a place holds this object."""

    __slots__ = ('books', 'name', 'places', 'idle', 'waiters')

    def __init__(self, books: Books, name: str) -> None:
        self.books = books
        self.name = name
        self.places = 0
        # In the order in which they were returned.
        self.idle: list[Connection] = []
        # The requests that wait, by their tickets, in that order. A dict would look for its first
        # item among all that have been before it.
        self.waiters: OrderedDict[float, asyncio.Future[Any]] = OrderedDict()

    def __repr__(self) -> str:
        return (f'<OriginBooks {self.name}: {self.places} places, {len(self.idle)} idle, '
                f'{len(self.waiters)} waiting>')

    def first_ticket(self) -> float:
        """The ticket of the request that has waited longest. One that was cancelled in this turn
        of the loop may still be there, but does not count."""
        while self.waiters:
            ticket, waiter = next(iter(self.waiters.items()))
            if not waiter.done():
                return ticket
            del self.waiters[ticket]
        return inf

    def return_place(self) -> None:
        self.books.return_place(self)


class Books:
    """See above. A pool has one, and its connections hold it."""

    __slots__ = ('max_connections', 'max_per_origin', 'max_idle', 'by_origin', 'opened',
                 'places', 'idle', 'queue', 'tickets', 'sessions', 'heads', 'answered',
                 'why_closed', '__weakref__')

    def __init__(self, max_connections: float, max_per_origin: float, max_idle: float,
                 heads: Heads) -> None:
        # The idle connections of all origins. The one that has been idle longest is the first.
        self.idle: dict[Connection, None] = {}
        self.max_connections = max_connections
        self.max_per_origin = max_per_origin
        self.max_idle = max_idle
        # Origins that have a place or a request that waits.
        self.by_origin: dict[str, OriginBooks] = {}
        # All connections, those in use too. This keeps them alive: a response body that is garbage
        # may be finalized after its connection otherwise.
        self.opened: set[Connection] = set()
        self.places = 0
        # A heap of the origins that have room, but need a place of `max_connections`, by the first
        # ticket of each. An entry may be out of date, or there twice: see `first_queued`.
        self.queue: list[tuple[float, OriginBooks]] = []
        self.tickets: Iterator[float] = itertools.count()
        # By the name of the origin: what its next responses may have in common with the last.
        self.sessions: dict[str, TlsSession] = {}
        self.heads = heads
        # The origins that have sent a response.
        self.answered: dict[str, bool] = {}
        # What a request is told. Empty while the pool is open.
        self.why_closed = ''

    def __repr__(self) -> str:
        waiting = sum(len(each.waiters) for each in self.by_origin.values())
        return (f'<Books: {self.places} of {self.max_connections} places, {len(self.idle)} idle, '
                f'{waiting} waiting{", " if self.why_closed else ""}{self.why_closed}>')

    def of_origin(self, origin: Origin) -> OriginBooks:
        origin_books = self.by_origin.get(origin.name)
        if origin_books is None:
            origin_books = self.by_origin[origin.name] = OriginBooks(self, origin.name)
        return origin_books

    # Idle connections

    def take_idle(self, origin: Origin, peers: Peers | None, now: float) -> Connection | None:
        """Lend a connection on which nothing has come since its last response, and which leads to
        one of the peers, if these matter."""
        origin_books = self.by_origin.get(origin.name)
        if origin_books is not None:
            idle = origin_books.idle
            while idle:
                connection = idle.pop()
                del self.idle[connection]
                connection.state = OPEN
                if connection.is_reusable(peers, now):
                    return connection
                connection.close('it can not be used again')
        return None

    def is_ipv6_next(self, origin: Origin) -> bool:
        """The connection that `take_idle` looks at first has an IPv6 address."""
        origin_books = self.by_origin.get(origin.name)
        return (origin_books is not None and bool(origin_books.idle)
                and ':' in origin_books.idle[-1].endpoint.peer)

    def return_connection(self, connection: Connection) -> None:
        """Its response has ended: give it to a request that waits, or let it idle."""
        origin_books = connection.place
        if self.why_closed:
            connection.close(self.why_closed)
            return
        if origin_books.waiters or self.queue:
            ticket = origin_books.first_ticket()
            if self.first_queued() + MAX_OVERTAKING * self.max_connections < ticket:
                # That request was overtaken often enough.
                connection.close('its place goes to another origin')
                return
            if ticket < inf:
                give_to(origin_books.waiters.pop(ticket), connection)
                return
        origin_books.idle.append(connection)
        self.idle[connection] = None
        connection.state = IDLE
        if len(self.idle) > self.max_idle:
            next(iter(self.idle)).close('max_idle_connections')

    def remove_idle(self, connection: Connection) -> None:
        del self.idle[connection]
        connection.place.idle.remove(connection)
        connection.state = OPEN

    # Places

    def take_place(self, origin: Origin) -> OriginBooks | str:
        """Lend a place for a new connection, or tell why there is none."""
        origin_books = self.of_origin(origin)
        if origin_books.places >= self.max_per_origin:
            return (f'{origin_books.places} in use for {origin_books.name}, and '
                    f'max_connections_per_origin is {self.max_per_origin}')
        if self.places >= self.max_connections and self.idle:
            # It belongs to another origin, because `take_idle` has found none of this one.
            next(iter(self.idle)).close('its place goes to another origin')
        if self.places >= self.max_connections:
            self.drop_if_unused(origin_books)
            return f'{self.places} in use, and max_connections is {self.max_connections}'
        origin_books.places += 1
        self.places += 1
        # It may have been dropped meanwhile: the garbage collector closes connections, too.
        self.by_origin[origin_books.name] = origin_books
        return origin_books

    async def await_place(self, loop: Loop, origin: Origin,
                          limits: Limits) -> OriginBooks | Connection:
        """Lend a place, or a connection that has just been returned and has one."""
        origin_books = self.of_origin(origin)
        ticket = next(self.tickets)
        waiter = origin_books.waiters[ticket] = loop.create_future()
        self.enqueue(origin_books)
        timer = loop.call_later(limits.pool, give_to, waiter, limits.late('pool'))
        try:
            given = await waiter
        except BaseException:
            # It may have been given something in the turn of the loop in which it was cancelled.
            if waiter.done() and not waiter.cancelled():
                pass_on_unused(waiter.result())
            raise
        finally:
            timer.cancel()
            origin_books.waiters.pop(ticket, None)
            self.drop_if_unused(origin_books)
        if isinstance(given, Exception):
            raise given
        assert isinstance(given, (OriginBooks, Connection))
        return given

    def return_place(self, origin_books: OriginBooks) -> None:
        """A connection has closed, or was not made. Its place goes to whoever is the next."""
        assert origin_books.places, 'a place is returned once'
        origin_books.places -= 1
        self.places -= 1
        if origin_books.waiters:
            self.enqueue(origin_books)
        while self.queue and self.places < self.max_connections and self.first_queued() < inf:
            ticket, first = heappop(self.queue)
            first.places += 1
            self.places += 1
            give_to(first.waiters.pop(ticket), first)
            self.enqueue(first)
        self.drop_if_unused(origin_books)

    def enqueue(self, origin_books: OriginBooks) -> None:
        """Its first request can have the next free place, if its origin has room."""
        ticket = origin_books.first_ticket()
        if ticket < inf and origin_books.places < self.max_per_origin:
            heappush(self.queue, (ticket, origin_books))
            if len(self.queue) > 2 * len(self.by_origin):
                # Most entries are out of date, as those of requests that have given up.
                queued = {each for _, each in self.queue}
                self.queue = []
                for each in queued:
                    self.enqueue(each)

    def first_queued(self) -> float:
        """The first ticket of the queue. If its request has gone, that of the request which comes
        next in its origin takes its place."""
        while self.queue:
            ticket, origin_books = self.queue[0]
            if origin_books.first_ticket() == ticket:
                return ticket
            heappop(self.queue)
            self.enqueue(origin_books)
        return inf

    def drop_if_unused(self, origin_books: OriginBooks) -> None:
        # Another object may stand for the same origin by now.
        if (not origin_books.places and not origin_books.waiters
                and self.by_origin.get(origin_books.name) is origin_books):
            del self.by_origin[origin_books.name]

    # Ends

    def close(self) -> None:
        self.why_closed = 'the pool is closed'
        for origin_books in list(self.by_origin.values()):
            for waiter in origin_books.waiters.values():
                give_to(waiter, RuntimeError('the pool was closed'))
            origin_books.waiters.clear()
        for connection in list(self.opened):
            # If its loop is closed, its response can not end any more.
            if connection.state is IDLE or connection.loop.is_closed():
                connection.close(self.why_closed)

    def leave_to_parent(self) -> None:
        """In a child process, give up what the parent goes on using: the loop, the selector, TLS.

        Only the child's copies of the descriptors are closed, and at once. With them open, a peer
        would not see it when the parent closes its own.
        """
        self.why_closed = FORKED
        for connection in list(self.opened):
            connection.leave_to_parent()
        self.opened.clear()
        self.idle.clear()

    def __del__(self) -> None:
        if self.idle:
            warnings.warn('the pool was not closed: await close() when it has done its work',
                          ResourceWarning, stacklevel=1, source=self)


FORKED = ('the pool was used before this process was forked, and its connections are those of the '
          'parent: make one Pool for each process')

# The books of pools that have a loop, and so may have connections. A pool that was made before the
# fork, but not used, may be used in the child.
BOUND: weakref.WeakSet[Books] = weakref.WeakSet()


def leave_to_parent() -> None:
    for books in BOUND:
        books.leave_to_parent()


# To ask for the process in each request would cost a system call. Windows has no fork.
getattr(os, 'register_at_fork', lambda **_: None)(after_in_child=leave_to_parent)


def give_to(waiter: asyncio.Future[Any], given: object) -> None:
    """Give it what it waits for, unless it has something already. If its loop was closed, no one
    waits any more, and the loop would raise."""
    if not waiter.done() and not waiter.get_loop().is_closed():
        waiter.set_result(given)


def pass_on_unused(given: object) -> None:
    """What a request was given goes to the next one, because it was cancelled or has failed."""
    if isinstance(given, OriginBooks):
        given.return_place()
    elif isinstance(given, Connection):
        given.return_unused()


# ------------------------------------------------------------------------------ connecting
#
# From an origin to a connection that an exchange can use. An idle one is taken from the books if
# that is possible. Otherwise this part takes a place, opens sockets, and makes TLS. It owns all
# of these until the connection is usable, and hands that to the exchange. The lookup of the host,
# connecting and the TLS handshake share one deadline.

class Connector:
    """What all connections of a pool are made with."""

    __slots__ = ('get_sock', 'get_connection', 'get_ssl_context', 'ssl_context', 'settings',
                 'names', 'books', 'acquisition_type', 'connection_type')

    def __init__(self, get_sock: Callable[[int], socket.socket],
                 get_connection: GetConnection | None,
                 get_ssl_context: Callable[[], ssl.SSLContext], settings: Settings,
                 names: Names, books: Books) -> None:
        self.get_sock = get_sock
        self.get_connection = get_connection
        self.get_ssl_context = get_ssl_context
        self.ssl_context: ssl.SSLContext | None = None
        self.settings = settings
        self.names = names
        self.books = books
        # Those that are watched are of other types.
        self.acquisition_type: type[Acquisition] = Acquisition
        self.connection_type: type[Connection] = Connection

    def __repr__(self) -> str:
        return f'<Connector with {"names" if self.get_connection is None else "get_connection"}>'

    def take_idle(self, origin: Origin, now: float) -> Connection | None:
        """Take an idle connection of the origin, unless its name has to be looked up first."""
        if self.get_connection is not None:
            return self.books.take_idle(origin, None, now)
        peers = self.names.fresh(origin, now)
        return None if peers is None else self.books.take_idle(origin, peers, now)


class Acquisition:
    """Finds or makes the connection for one request."""

    __slots__ = ('connector', 'loop', 'method', 'origin', 'head', 'limits', 'logger',
                 'get_resolver_adapter', 'deadline', 'place')

    def __init__(self, connector: Connector, loop: Loop, method: bytes, origin: Origin,
                 head: bytes, limits: Limits, logger: Adapter | None,
                 get_resolver_adapter: Callable[[], GetLoggerAdapter]) -> None:
        self.connector = connector
        self.loop = loop
        self.method = method
        self.origin = origin
        self.head = head
        self.limits = limits
        # None if what it logs would go nowhere.
        self.logger = logger
        self.get_resolver_adapter = get_resolver_adapter
        self.deadline = inf
        # Once there is one.
        self.place: OriginBooks

    def __repr__(self) -> str:
        return f'<Acquisition for {self.describe()}>'

    def describe(self) -> str:
        return f'{shown_method(self.method)} {self.origin.name}'

    async def run(self) -> Connection:
        books = self.connector.books
        peers = await self.find_peers()
        connection = books.take_idle(self.origin, peers, self.loop.time())
        if connection is not None:
            return connection
        given: OriginBooks | Connection | str = ''
        try:
            given = books.take_place(self.origin)
            if isinstance(given, str):
                given = await self.await_place(given)
                # That may have taken long.
                peers = await self.find_peers()
            if isinstance(given, Connection):
                if given.is_reusable(peers, self.loop.time()):
                    return given
                given = given.close_but_keep_place()
            self.place = given
            connection = await self.connect(peers)
            # The place is its own from now on.
            connection.state = OPEN
            return connection
        except BaseException:
            pass_on_unused(given)
            raise

    # Names

    async def find_peers(self) -> Peers | None:
        """The addresses that a connection may lead to, or None if `get_connection` decides that.

        The time of the attempt begins here.
        """
        now = self.loop.time()
        self.deadline = now + self.limits.connect
        if self.connector.get_connection is not None:
            return None
        try:
            return self.connector.names.fresh(self.origin, now) or await self.look_up(now)
        except Exception as cause:
            raise failed(HttpDnsError, Phase.NAME,
                         f'{self.describe()}: resolving {self.origin.host} failed: '
                         f'{dns_reason(cause)}') from cause

    async def look_up(self, now: float) -> Peers:
        """Ask for the addresses, or share the outcome of another request that does."""
        names, host = self.connector.names, self.origin.host
        names.check_missing(host, now)
        stale = names.stale(host, now)
        if stale is not None and now < stale.ask_at:
            return stale
        return await shared(
            names.looking_up, host, self.loop, partial(self.renew, stale), self.deadline,
            self.limits.passed('connect'))

    async def renew(self, stale: Peers | None) -> Peers:
        """Ask for the addresses. Stale ones are used if the nameservers give none in time."""
        names, origin = self.connector.names, self.origin
        deadline, why_late = self.deadline, self.limits.passed('connect')
        if stale is not None:
            seconds = stale.patience(STALE_PATIENCE if not stale.failures else
                                     CONNECTION_ATTEMPT_DELAY)
            if self.loop.time() + seconds < deadline:
                deadline = self.loop.time() + seconds
                why_late = f'no answer in {seconds:.2g} seconds'
            if stale.failures:
                # The other requests do not wait for this one.
                stale.ask_at = deadline
        # An idle connection that comes next and has an IPv6 address needs the AAAA records.
        wants_both = self.connector.books.is_ipv6_next(origin)
        needs_ipv4 = stale is not None and any(
            address.version == 4 for address in stale.addresses.values())
        lookup = Lookup(self.loop, names, origin.host, deadline, why_late, wants_both, needs_ipv4,
                        self.get_resolver_adapter)
        try:
            await lookup.run()
        except Exception as cause:
            if isinstance(cause, dns().DnsRecordDoesNotExist):
                names.store_missing(origin.host, cause, self.loop.time())
            if stale is None or not is_unanswered(cause):
                raise
            self.keep(stale, cause)
            return stale
        return names.store(origin.host, lookup)

    def keep(self, stale: Peers, cause: Exception) -> None:
        if not stale.failures:
            logger = self.logger or get_logger_adapter_default(
                logger_extra(self.method, self.origin.name))
            logger.warning(
                'Resolving %s failed: %s. Its last addresses are used for up to %g seconds',
                self.origin.host, dns_reason(cause), self.connector.names.max_stale)
        stale.ask_at = self.loop.time() + min(2 ** stale.failures, MAX_STALE_PAUSE)
        stale.failures += 1

    def question(self, kind: int) -> Resolving:
        return Resolving(self.loop, self.answer(kind), self.limits.passed('connect'))

    def answer(self, kind: int) -> Coroutine[Any, Any, list[Address]]:
        return self.connector.names.answer(
            self.loop, self.origin.host, kind, self.get_resolver_adapter)

    # Places

    async def await_place(self, why: str) -> OriginBooks | Connection:
        try:
            if self.logger is not None:
                # A request that waits for ever raises nothing. Only this line tells of it.
                self.logger.info('Waiting for a connection: %s', why)
            return await self.connector.books.await_place(self.loop, self.origin, self.limits)
        except Exception as cause:
            raise failed(HttpConnectionError, Phase.POOL,
                         f'{self.describe()}: waiting for a connection failed: {reason(cause)}'
                         ) from cause

    # Sockets

    async def connect(self, peers: Peers | None) -> Connection:
        connection = await (self.connect_elsewhere() if peers is None else
                            Race(self, peers).run())
        if self.origin.is_tls:
            try:
                await self.secure(connection)
            except BaseException as cause:
                connection.close('there is no TLS')
                if not isinstance(cause, Exception):
                    raise
                raise failed(
                    HttpTlsError, Phase.TLS,
                    f'{shown_method(self.method)} {connection.endpoint.shown}: the TLS handshake '
                    f'failed: {reason(cause)}{tls_hint(cause)}') from cause
        connection.endpoint.facts = facts_of(connection.sock)
        return connection

    async def connect_elsewhere(self) -> Connection:
        origin, get_connection = self.origin, self.connector.get_connection
        assert get_connection is not None
        sock = None
        try:
            coroutine = awaited(get_connection(origin.scheme, origin.host, origin.port))
            steps = InTime(self.loop, coroutine, self.limits.passed('connect'))
            sock = await steps.run_until(self.deadline)
            if not isinstance(sock, socket.socket) or isinstance(sock, ssl.SSLSocket):
                raise TypeError('it must return a connected socket.socket, without TLS, got '
                                f'{type(sock).__name__}')
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                # Our own sockets have this, too. Without it, the second send of a request waits
                # until the peer has acknowledged the first.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return self.made(sock, '', shown_peer(sock))
        except Exception as cause:
            if isinstance(sock, socket.socket):
                close_socket(sock)
            raise failed(HttpConnectionError, Phase.CONNECT,
                         f'{self.describe()}: get_connection failed: {reason(cause)}') from cause

    def open_socket(self, address: Address) -> Connection:
        sock = self.connector.get_sock(
            socket.AF_INET if address.version == 4 else socket.AF_INET6)
        if not isinstance(sock, socket.socket):
            raise TypeError(f'get_sock must return a socket.socket, got {type(sock).__name__}')
        peer = str(address)
        return self.made(sock, peer, shown_address(peer, self.origin.port))

    def made(self, sock: socket.socket, peer: str, where: str) -> Connection:
        endpoint = Endpoint(self.origin, peer, where, self.connector.settings, self.limits)
        try:
            return self.connector.connection_type(self.loop, sock, endpoint, self.place)
        except BaseException:
            close_socket(sock)
            raise

    async def secure(self, connection: Connection) -> None:
        """Make TLS. If the handshake fails, it is not tried again on another address."""
        connector = self.connector
        if connector.ssl_context is None:
            connector.ssl_context = connector.get_ssl_context()
        sessions = connector.books.sessions
        session = sessions.get(self.origin.name) or TlsSession()
        store_latest(sessions, self.origin.name, session)
        try:
            await connection.start_tls(connector.ssl_context, session, self.deadline)
        except Exception:
            sessions.pop(self.origin.name, None)
            raise


class Race:
    """Connects to the first address of a host that accepts (RFC 8305 5), without tasks.

    It tries the next address when the last one has failed, or has not answered in time, while the
    earlier attempts go on. After the last address it asks for the records that are unknown, which
    usually are those of AAAA. All attempts, and that lookup, wake one future. Then `advance` looks
    at what has happened.
    """

    __slots__ = ('acquisition', 'peers', 'turn', 'tried', 'untried', 'attempts', 'asked_for',
                 'lookup', 'give_up_at', 'next_at', 'failures')

    def __init__(self, acquisition: Acquisition, peers: Peers) -> None:
        self.acquisition = acquisition
        self.peers = peers
        self.turn = peers.turn
        peers.turn += 1
        # Which addresses have been tried, and which come next. Another request may renew the peers
        # in the meantime: then those from before and after that are tried.
        self.tried: set[Address] = set()
        self.untried: deque[Address] = deque()
        self.attempts: list[Connection] = []
        # The lookup of the records that are unknown: their type, and what goes on.
        self.asked_for = ''
        self.lookup: Resolving | None = None
        # When the lookup has had its time, because nothing else may still succeed.
        self.give_up_at = inf
        # When the next address is tried, or asked for.
        self.next_at = 0.0
        # What has failed, and why.
        self.failures: list[tuple[str, Exception]] = []

    def __repr__(self) -> str:
        return (f'<Race for {self.acquisition.describe()}: '
                f'{", ".join(self.pending()) or "nothing"} pending, '
                f'{", ".join(what for what, _ in self.failures) or "nothing"} failed>')

    def pending(self) -> list[str]:
        """What may still succeed."""
        lookups = [] if self.lookup is None else [self.what_is_asked()]
        return [connection.endpoint.peer for connection in self.attempts] + lookups

    async def run(self) -> Connection:
        try:
            while (winner := self.advance(self.acquisition.loop.time())) is None:
                await self.wait()
            if self.lookup is not None:
                await self.lookup.stop()
            self.attempts.remove(winner)
            return winner
        finally:
            for connection in self.attempts:
                connection.close('another attempt has won, or the time is over')
            # They have the frames of the race in their tracebacks, so that is a cycle.
            self.failures = []
            if self.lookup is not None:
                await self.lookup.stop()

    def advance(self, now: float) -> Connection | None:
        """The connection, if it has been made. Otherwise start what is due."""
        for connection in self.attempts.copy():
            # It was waited for, and has been woken.
            if connection.writer is None:
                try:
                    connection.check_connected()
                    return connection
                except OSError as cause:
                    self.fail(connection, cause)
                    self.next_at = now
        if self.lookup is not None and self.lookup.is_ready():
            self.step_lookup(self.lookup, now)
        while self.next_at <= now < self.acquisition.deadline:
            winner = self.start_next(now)
            if winner is not None:
                return winner
        if self.lookup is not None and not self.attempts and self.give_up_at == inf:
            # All addresses have failed, and the nameservers may never answer this.
            self.give_up_at = now + self.peers.patience(CONNECTION_ATTEMPT_DELAY)
        self.check_over(now)
        return None

    def fail(self, connection: Connection, cause: Exception) -> None:
        self.failures.append((connection.endpoint.peer, cause))
        self.attempts.remove(connection)
        connection.close('connecting failed')

    def start_next(self, now: float) -> Connection | None:
        """Try the next address, or ask for more of them. A connection, if it is made at once."""
        if not self.untried:
            self.untried.extend(address for address in self.peers.in_turn(self.turn)
                                if address not in self.tried)
        if not self.untried:
            self.next_at = inf
            if self.peers.unknown and not self.asked_for:
                self.asked_for = self.peers.unknown
                self.lookup = self.acquisition.question(dns().TYPES[self.asked_for])
                self.step_lookup(self.lookup, now)
            return None
        address = self.untried.popleft()
        self.tried.add(address)
        try:
            connection = self.acquisition.open_socket(address)
        except Exception as cause:
            self.failures.append((str(address), cause))
            return None
        self.attempts.append(connection)
        try:
            is_made = connection.start_connecting(sockaddr(address, self.acquisition.origin.port))
        except Exception as cause:
            self.fail(connection, cause)
            return None
        self.next_at = now + CONNECTION_ATTEMPT_DELAY
        return connection if is_made else None

    def step_lookup(self, lookup: Resolving, now: float) -> None:
        try:
            lookup.step()
            return
        except StopIteration as stop:
            self.learn(stop.value, now)
        except dns().DnsRecordDoesNotExist:
            self.learn([], now)
        except Exception as cause:
            self.failures.append((self.what_is_asked(), cause))
        self.lookup = None
        self.give_up_at = inf
        self.next_at = now

    def learn(self, answer: list[Address], now: float) -> None:
        self.peers.add(answer, now, self.acquisition.connector.names.min_ttl)
        # Another request may have renewed them, without those of the other type.
        if self.peers.unknown == self.asked_for:
            self.peers.unknown = ''

    def what_is_asked(self) -> str:
        return f'{self.asked_for} records'

    async def wait(self) -> None:
        """Wait until an attempt has succeeded or failed, the lookup can go on, or it is time."""
        loop = self.acquisition.loop
        woken = loop.create_future()
        for connection in self.attempts:
            connection.wait_writable_with(woken)
        timer = loop.call_at(
            min(self.next_at, self.give_up_at, self.acquisition.deadline), wake, woken)
        try:
            if self.lookup is None:
                await woken
            else:
                await self.lookup.wait(woken)
        finally:
            timer.cancel()

    def check_over(self, now: float) -> None:
        """Raise if there is no time left, or nothing that may still succeed."""
        is_late = now >= self.acquisition.deadline
        pending = self.pending()
        if pending and not is_late:
            if now < self.give_up_at:
                return
            self.failures += [(what, TimeoutError('no answer in time')) for what in pending]
        causes = [cause for _, cause in self.failures]
        cause: Exception | None = ExceptionGroup('no address accepted a connection', causes) \
            if len(causes) > 1 else causes[0] if causes else None
        if is_late:
            late = self.acquisition.limits.late('connect')
            late.__cause__, cause = cause, late
            if not pending and not causes:
                pending = ['no address was tried']
            self.failures += [(what, late) for what in pending]
        reasons = '; '.join(
            f'{what}: {dns_reason(cause) if what == self.what_is_asked() else reason(cause)}'
            for what, cause in self.failures)
        raise failed(HttpConnectionError, Phase.CONNECT,
                     f'{self.acquisition.describe()}: connecting failed: {reasons}') from cause


async def awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def facts_of(sock: socket.socket) -> ConnectionFacts:
    try:
        peer, local = sock.getpeername(), sock.getsockname()
    except OSError:
        # The peer has reset it already. The request will tell that.
        peer = local = None
    if not isinstance(sock, ssl.SSLSocket):
        return ConnectionFacts(peer, local, None, None, None)
    return ConnectionFacts(
        peer, local, sock.version(), sock.cipher(), sock.getpeercert(binary_form=True))


# OpenSSL's codes for what a certificate must have only if X509_V_FLAG_X509_STRICT is set, from
# X509_V_ERR_PATHLEN_INVALID_FOR_NON_CA to X509_V_ERR_EXTENSIONS_REQUIRE_VERSION_3.
STRICT_VERDICTS = range(80, 94)

# What OpenSSL's reason for an error ends with, and what it does not tell. A peer sends the alert
# for a failed handshake when the two have nothing in common, and, up to TLS 1.2, also when it
# misses a certificate.
TLS_HINTS = {
    'WRONG_VERSION_NUMBER': 'the peer does not speak TLS',
    'HANDSHAKE_FAILURE': 'the peer refused the handshake: it may share no version, cipher or '
                         'group, or want a client certificate',
    'ALERT_PROTOCOL_VERSION': 'the peer allows none of the TLS versions of the SSL context',
    'UNSUPPORTED_PROTOCOL': 'the SSL context does not allow the TLS version of the peer',
    'CERTIFICATE_REQUIRED': 'the peer wants a client certificate',
    'ALERT_BAD_CERTIFICATE': 'the peer got no client certificate, or does not accept it',
    'ALERT_UNKNOWN_CA': "the peer does not know the client certificate's authority",
}


def tls_hint(cause: BaseException) -> str:
    """What OpenSSL's words for the error do not tell."""
    if not isinstance(cause, ssl.SSLError):
        return ''
    if getattr(cause, 'verify_code', 0) in STRICT_VERDICTS:
        return (' (Python 3.13 and later ask for what RFC 5280 does: issue the certificate anew, '
                'or clear ssl.VERIFY_X509_STRICT in the verify_flags of your own context)')
    name = reason_of(cause)
    return next((f' ({hint})' for end, hint in TLS_HINTS.items() if name.endswith(end)), '')


def is_alert(cause: BaseException) -> bool:
    """The peer said why it ends the connection."""
    return isinstance(cause, ssl.SSLError) and 'ALERT' in reason_of(cause)


def reason_of(cause: ssl.SSLError) -> str:
    """OpenSSL's reason for the error, or '' if it has none."""
    return getattr(cause, 'reason', None) or ''


def sockaddr(address: Address, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    if isinstance(address, IPv4Address):
        return str(address), port
    zone = address.scope_id
    scope = 0 if zone is None else int(zone) if zone.isdigit() else socket.if_nametoindex(zone)
    return str(address).partition('%')[0], port, 0, scope


def shown_peer(sock: socket.socket) -> str:
    """Where a socket that the caller has made leads to, as far as it tells."""
    name = sock.getpeername()
    return shown_address(*name[:2]) if isinstance(name, tuple) else str(name)


def shown_address(host: str, port: int) -> str:
    return f'[{host}]:{port}' if ':' in host else f'{host}:{port}'


# ---------------------------------------------------------------------------- request head
#
# Turns the arguments of a request into its origin, the bytes of its head, and what the head
# declares about the body, which `sending` holds the body to. A bad argument is refused with a
# ValueError or TypeError that names it, and nothing is changed silently. These are pure functions
# that own nothing. They never show a path, a query or the value of a field.

# Those of what is rare are compiled by `re` when they are first used, or each import would pay.

TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 5.6.2
FIELD_VALUE = re.compile(rb'[^\x00-\x08\x0a-\x1f\x7f]*')  # RFC 9110 5.5, RFC 9112 2.2
# Codings with their parameters (RFC 9110 10.1.4). If chunked is not the last of them, or not the
# only chunked (RFC 9112 6.1), some servers do not find the end of the content.
CODINGS = (
    rb'(?i:(?:(?!chunked[ \t,;])<token>(?:~;~<token>~=~(?:<token>|"(?:[^"\\]|\\.)*+"))*+~,~)*+'
    rb'chunked)').replace(b'~', rb'[ \t]*+').replace(b'<token>', TOKEN.pattern)
# RFC 9110 7.2 and RFC 3986 3.2.2 also allow an empty host, and one with ",", which some servers
# would read as two hosts.
HOST_FIELD = (
    rb"(?:\[([0-9A-Fa-f:.]+)\]|(?:[A-Za-z0-9\-._~!$&'()*+;=]|%[0-9A-Fa-f]{2})+)(?::[0-9]{0,5})?")
LENGTH = re.compile(rb'[0-9]{1,20}')  # RFC 9110 8.6, but bounded
USUAL_METHODS = frozenset((b'GET', b'HEAD', b'POST', b'PUT', b'DELETE', b'PATCH', b'OPTIONS'))

# RFC 3986 3. The request target begins with the path, and the fragment is not sent.
URL = re.compile(r'([A-Za-z][A-Za-z0-9+.\-]*)://([^/?#]*)([^#]*)')
AUTHORITY = re.compile(r'(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]*))?')
CONTROL = re.compile(r'[\x00-\x1f\x7f-\x9f]')
IPV4 = re.compile(r'[0-9]{1,3}(?:\.[0-9]{1,3}){3}')
HOST_NAME = re.compile(r'(?:[a-z0-9_-]{1,63}\.)*+(?!(?:[0-9]+|0x[0-9a-f]*)\Z)[a-z0-9_-]{1,63}')
# What IDNA 2003, which is all that Python knows, maps to something else than IDNA 2008 does, and
# so to the name of somebody else: the deviations of UTS 46, the capital of one of them, and what
# Corrigendum 4 of Unicode has changed since.
DEVIATION = '[\xdf\u1e9e\u03c2\u200c\u200d\U0002f868\U0002f874\U0002f91f\U0002f95f\U0002f9bf]'
IDNA_DOTS = '[.\u3002\uff0e\uff61]'  # RFC 3490 3.1
ZONE = r'[A-Za-z0-9._~-]+'

# RFC 3986 3.3, 3.4: pchar, "/" and "?". Everything else is percent-encoded, as is a stray "%".
TARGET = re.compile(
    r"[A-Za-z0-9\-._~!$&'()*+,;=:@/?]*+(?:%[0-9A-Fa-f]{2}[A-Za-z0-9\-._~!$&'()*+,;=:@/?]*+)*+")
NOT_IN_TARGET = rb"%(?![0-9A-Fa-f]{2})|[^A-Za-z0-9\-._~!$&'()*+,;=:@/?%]"

# A request target that does not break the request line.
GIVEN_TARGET = re.compile(rb'[^\x00-\x20\x7f]+')
# What the value of a field must not have (RFC 9110 5.5). HTAB is none of them.
CONTROLS = bytes((*range(9), *range(10, 32), 127))

# The fields that a `Declared` is made of. Those of the first set may be there only once.
DECLARING_ONCE = frozenset((b'host', b'content-length', b'transfer-encoding'))
DECLARING = DECLARING_ONCE | {b'connection', b'upgrade', b'expect'}


class Known:
    """What one pool remembers of the arguments of its requests, so that the usual ones are checked
    once. None of it holds a secret."""

    __slots__ = ('end_of_line', 'urls', 'plain', 'aliases', 'names', 'declared', 'limits')

    def __init__(self, http_version: bytes, limits: Limits) -> None:
        # Of the request line.
        self.end_of_line = b' ' + http_version
        self.urls = parsed_urls()
        # What is made of a method and a URL alone, for the URLs that are remembered.
        self.plain: Parsed[tuple[bytes, str], tuple[Origin, bytes, Declared]] = Parsed(
            lambda key: build_head(self, key[0], key[1], (), (), None, None),
            lambda key, _: key[1] in self.urls and len(key[0]) <= MAX_PARSED_LENGTH)
        self.aliases = Parsed(alias_of)
        self.names = Parsed(parse_name)
        self.declared = Parsed(partial(parse_declared, http_version), is_short)
        self.limits = Parsed(partial(parse_timeouts, limits))

    def __repr__(self) -> str:
        return f'<Known: {len(self.urls)} URLs, {len(self.names)} names of fields>'

    def limits_of(self, timeouts: Timeouts) -> Limits:
        try:
            return self.limits[tuple(timeouts.items())]
        except (AttributeError, TypeError):
            raise TypeError('timeouts must be a mapping of connect, read, write and pool to '
                            f'seconds or None, got {timeouts!r}'[:2 * MAX_SHOWN]) from None


def build_head(
        known: Known, method: bytes, url: str, params: Params, headers: Headers,
        target: bytes | None, server_hostname: str | None,
) -> tuple[Origin, bytes, Declared]:
    if method.__class__ is not bytes or method not in USUAL_METHODS:
        check_method(method)
    try:
        origin, path = known.urls[url]
    except TypeError:
        # To look at the type first would cost each request some time.
        check_type('url', url, str)
        raise
    if server_hostname is not None:
        origin = known.aliases[origin, checked_server_hostname(server_hostname)]
    if target is not None:
        path = checked_target(target, params)
    elif params:
        path = with_params(path, params)
    pieces, values = build_fields(known.names, headers) if headers else ((), NO_VALUES)
    host = (b'\r\nhost: ', origin.field) if b'host' not in values else ()
    head = b''.join((method, b' ', path, known.end_of_line, *host, *pieces, b'\r\n\r\n'))
    # Each name and each value are a piece. Only the line ends may be control characters.
    if len(head) - len(head.translate(None, CONTROLS)) != len(pieces) + len(host) + 4:
        raise bad_value(pieces)
    declared = known.declared[tuple(values.items())] if values else NOTHING_DECLARED
    return origin, head, declared


def check_type(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        what = 'a str' if kind is str else kind.__name__
        raise TypeError(f'{name} must be {what}, got {type(value).__name__}')


def check_method(method: bytes) -> None:
    check_type('method', method, bytes)
    if not TOKEN.fullmatch(method):
        raise ValueError(f'method must be a token, got {shown(method)}')
    if method.upper() == b'CONNECT':
        raise ValueError('method must not be CONNECT: tunnels are not supported')


def checked_target(target: bytes, params: Params) -> bytes:
    """Return it if it does not break the request line (RFC 9112 3)."""
    check_type('target', target, bytes)
    if not GIVEN_TARGET.fullmatch(target):
        raise ValueError('target must have no control character, no space, and at least one byte')
    if params:
        raise ValueError('params must be empty when there is a target, which has its own query')
    return target


def build_fields(names: Parsed[bytes, tuple[bytes, bytes]],
                 headers: Headers) -> tuple[Sequence[bytes], dict[bytes, bytes]]:
    """Return the pieces of the field lines, and the values of the fields that declare something.

    The values are not checked for control characters.
    """
    pieces = []
    values: dict[bytes, bytes] = {}
    try:
        fields = iter(headers)
    except TypeError:
        raise bad_field(headers, headers) from None
    for field in fields:
        try:
            name, value = field
        except (TypeError, ValueError):
            raise bad_field(field, headers) from None
        # Most are bytes themselves, and that is cheaper to see.
        if (name.__class__ is not bytes and not isinstance(name, bytes)
                or value.__class__ is not bytes and not isinstance(value, bytes)):
            raise bad_field((name, value), headers)
        start, declaring = names[name]
        pieces.append(start)
        pieces.append(value)
        if declaring:
            if declaring in values:
                if declaring in DECLARING_ONCE:
                    raise ValueError(f'headers must have at most one {declaring.decode()}')
                value = values[declaring] + b',' + value  # RFC 9110 5.3
            values[declaring] = value
    return pieces, values


def parse_name(name: bytes) -> tuple[bytes, bytes]:
    """Return what comes before its values, and the name in lower case if it declares something."""
    if not TOKEN.fullmatch(name):
        raise ValueError(f'headers must have tokens as names, got {shown(name)}')
    lower_name = name.lower()
    return b'\r\n' + name + b': ', lower_name if lower_name in DECLARING else b''


def bad_value(pieces: Sequence[bytes]) -> ValueError:
    start = next(start for start, value in zip(pieces[::2], pieces[1::2], strict=True)
                 if value.translate(None, CONTROLS) != value)
    return ValueError('headers must not have control characters but HTAB in a value: '
                      f'see that of {shown(start[2:-2])}')


def bad_field(field: object, headers: object) -> TypeError:
    got = 'a dict: give its items()' if isinstance(headers, dict) else \
        f'({", ".join(type(item).__name__ for item in field)})' \
        if isinstance(field, (tuple, list)) else type(field).__name__
    return TypeError(f'headers must be pairs of name and value, both bytes, got {got}')


class Declared:
    """What the fields of a request declare about its body and its connection."""

    __slots__ = ('length', 'is_coded', 'has_body', 'close', 'upgrade', 'expects')

    def __init__(self, values: dict[bytes, bytes], http_version: bytes) -> None:
        if b'host' in values:
            check_host_field(values[b'host'])
        self.length: int | None = None
        if b'content-length' in values:
            digits = values[b'content-length']
            if not LENGTH.fullmatch(digits):
                raise ValueError(
                    f'headers must have 1 to 20 digits as content-length, got {shown(digits)}')
            self.length = int(digits)
        self.is_coded = b'transfer-encoding' in values
        if self.is_coded:
            check_codings(values[b'transfer-encoding'])
            if self.length is not None:
                raise ValueError(
                    'headers must not have content-length and transfer-encoding together')
            if http_version == b'HTTP/1.0':
                raise ValueError('headers must not have transfer-encoding in an HTTP/1.0 request')
        self.has_body = self.is_coded or bool(self.length)
        self.close = b'connection' in values and has_token(values[b'connection'], b'close')
        self.upgrade = b'upgrade' in values
        self.expects = b'expect' in values and has_token(values[b'expect'], b'100-continue')
        if self.expects and not self.has_body:
            raise ValueError('headers must not have expect: 100-continue without content')

    def __repr__(self) -> str:
        return f'<Declared {" ".join(name for name in self.__slots__ if getattr(self, name))}>'


NO_VALUES: dict[bytes, bytes] = {}
NOTHING_DECLARED = Declared(NO_VALUES, b'')


def parse_declared(http_version: bytes, values: tuple[tuple[bytes, bytes], ...]) -> Declared:
    return Declared(dict(values), http_version)


def is_short(values: tuple[tuple[bytes, bytes], ...], _: Declared) -> bool:
    return sum(len(value) for _, value in values) <= MAX_PARSED_LENGTH


def check_host_field(value: bytes) -> None:
    match = re.fullmatch(HOST_FIELD, value.strip(b' \t'))
    with contextlib.suppress(ValueError):
        if match is not None and (match[1] is None or IPv6Address(match[1].decode())):
            return
    raise ValueError('headers must have as host a name, an IPv4 address or an IPv6 address in '
                     'brackets, and a port of digits if any')


def check_codings(value: bytes) -> None:
    # RFC 9112 6.1: without chunked as the last coding, the end of a request can not be found.
    if value.lower().rpartition(b',')[2].strip(b' \t') != b'chunked':
        raise ValueError('headers must have chunked as the last transfer-encoding, got '
                         f'{shown(value)}')
    if not re.fullmatch(CODINGS, value.strip(b' \t')):
        raise ValueError('headers must have a list of codings as transfer-encoding, chunked '
                         f'only as the last of them, got {shown(value)}')


def parsed_urls() -> Parsed[str, tuple[Origin, bytes]]:
    """Remember URLs, but none with a query or a fragment, because these may hold a secret."""
    return Parsed(partial(parse_url, Parsed(Origin)),
                  lambda url, _: '?' not in url and '#' not in url)


def parse_url(origins: Parsed[str, Origin], url: str) -> tuple[Origin, bytes]:
    """Return the origin and the request target."""
    control = CONTROL.search(url)
    if control is not None:
        raise ValueError('url must not contain control characters, got '
                         f'{control[0]!r} at index {control.start()}')
    match = URL.match(url)
    if match is None:
        start = re.split('[/?#@:]', url, maxsplit=1)[0][:MAX_SHOWN]
        raise ValueError(f'url must start with http:// or https:// and a host, got {start!r}')
    scheme, authority, target = match.groups()
    if not target.startswith('/'):
        target = '/' + target
    try:
        encoded = target.encode()
    except UnicodeEncodeError as cause:
        raise ValueError('url must be encodable as UTF-8, but has a lone surrogate') from cause
    if not TARGET.fullmatch(target):
        encoded = re.sub(
            NOT_IN_TARGET, lambda match: b'%%%02X' % ord(match[0]), encoded)
    try:
        return origins[f'{scheme.lower()}://{authority}'], encoded
    except ValueError:
        if '@' not in url or ':' not in authority.rpartition(']')[2]:
            raise
    # A password with a slash in it ends the authority, so a part of it would be shown as a port.
    raise ValueError('url must not have userinfo (user:password@): use a header')


class Origin:
    """Scheme, canonical host and port of a URL. `name` has all three, and is the key in the books.

    `field` is what the `host` field has, and `server_hostname` what the certificate must be for.
    """

    __slots__ = ('name', 'scheme', 'is_tls', 'host', 'port', 'field', 'server_hostname', 'peers')

    def __init__(self, text: str) -> None:
        """Parse the scheme, which is in lower case, and the authority."""
        self.scheme, _, authority = text.partition('://')
        if self.scheme not in ('http', 'https'):
            raise ValueError(f'url must have the scheme http or https, got {self.scheme[:20]!r}')
        if '@' in authority:
            raise ValueError('url must not have userinfo (user:password@): use a header')
        match = AUTHORITY.fullmatch(authority)
        if match is None:
            raise ValueError('url must have a host, and a port of digits if any, got '
                             f'{authority[:MAX_SHOWN]!r}')
        self.is_tls = self.scheme == 'https'
        default_port = 443 if self.is_tls else 80
        digits = match[2]
        self.port = default_port if not digits else int(digits) if len(digits) <= 5 else 0
        if not 1 <= self.port <= 65535:
            raise ValueError(f'url must have a port from 1 to 65535, got {digits[:20]!r}')
        self.host = host = canonical_host(match[1])
        # RFC 6874 4: a zone is only meant for this machine.
        self.server_hostname = host.partition('%')[0]
        form = '[%s]' if ':' in host else '%s'
        self.name = f'{self.scheme}://{form % host}:{self.port}'
        port = '' if self.port == default_port else f':{self.port}'
        self.field = f'{form % self.server_hostname}{port}'.encode()
        self.peers = fixed_peers(IPv6Address(host)) if ':' in host else \
            fixed_peers(IPv4Address(host)) if IPV4.fullmatch(host) else None

    def __repr__(self) -> str:
        return f'<Origin {self.name}>'


def alias_of(key: tuple[Origin, str]) -> Origin:
    """The origin under another name for TLS. It shares no connection with the origin itself."""
    origin, server_hostname = key
    if not origin.is_tls or server_hostname == origin.server_hostname:
        return origin
    alias = copy(origin)
    alias.server_hostname = server_hostname
    alias.name = f'{origin.name} as {server_hostname}'
    return alias


def checked_server_hostname(name: str) -> str:
    check_type('server_hostname', name, str)
    try:
        # As that of a URL, it has no zone.
        return canonical_host(f'[{name}]' if ':' in name else name).partition('%')[0]
    except ValueError as cause:
        raise ValueError('server_hostname must be a host name or an IP address, got '
                         f'{name[:MAX_SHOWN]!r}') from cause


def canonical_host(host: str) -> str:
    """Return the one form of a URL's host that is looked up, connected to and sent. For layers.

    A name is in lower case and ASCII, without a final dot. An IPv6 address is without brackets.
    Raises ValueError if a request would refuse the host.
    """
    # A name has at most 253 characters (RFC 1035), and codecs are slow on long ones.
    is_short = len(host) <= 254
    if is_short and re.search(DEVIATION, host):
        host = encode_deviating(host)
    cause = None
    try:
        if host.startswith('['):
            return canonical_ipv6(host[1:-1])
        if is_short:
            name = (host if host.isascii() else host.encode('idna').decode()).lower()
            name = name.removesuffix('.')
            if IPV4.fullmatch(name):
                return str(IPv4Address(name))
            if HOST_NAME.fullmatch(name) and len(name) <= 253:
                return name
    except ValueError as error:
        cause = error
    raise ValueError('url must have as host an IPv4 address, an IPv6 address in brackets, or '
                     'a name of letters, digits, "-", "_" and ".", got '
                     f'{host[:MAX_SHOWN]!r}') from cause


def canonical_ipv6(literal: str) -> str:
    # RFC 6874: a zone follows "%25". Others write a bare "%", which is understood too.
    address, percent, zone = literal.partition('%')
    zone = zone.removeprefix('25')
    if percent and not re.fullmatch(ZONE, zone):
        raise ValueError('the zone must be of unreserved characters')
    return str(IPv6Address(f'{address}{percent}{zone}'))


def encode_deviating(host: str) -> str:
    """Encode a name by IDNA 2008, if the package for it is installed.

    Only the labels in which IDNA 2008 differs are encoded. So what is installed decides whether
    such a name is understood, and never where a name leads.
    """
    try:
        from idna import encode
    except ImportError as cause:
        raise ValueError(
            'url must have as host a name that IDNA 2003 does not take for another one, got '
            f'{host[:MAX_SHOWN]!r}: {deviation_hint(host)}install the package idna') from cause
    try:
        return '.'.join(
            encode(label, uts46=True).decode() if re.search(DEVIATION, label) else label
            for label in re.split(IDNA_DOTS, host))
    except ValueError as cause:
        raise ValueError('url must have as host a name that IDNA 2008 allows, got '
                         f'{host[:MAX_SHOWN]!r}') from cause


def deviation_hint(host: str) -> str:
    """Name the form of IDNA 2008, but only of usual names, since it may forbid others."""
    import unicodedata
    labels = [
        unicodedata.normalize('NFKC', ''.join(map(str.lower, label)))
        for label in re.split(IDNA_DOTS, host)]
    name = '.'.join(
        label if label.isascii() else f'xn--{label.encode("punycode").decode()}'
        for label in labels).removesuffix('.')
    is_plain = all(unicodedata.category(char)[0] in 'LMN' or char in '-\u200c\u200d'
                   for label in labels if not label.isascii() for char in label)
    return f'write {name!r}, or ' if is_plain and HOST_NAME.fullmatch(name) else ''


def with_params(target: bytes, params: Params) -> bytes:
    query = encode_params(params)
    if not query:
        return target
    separator = b'?' if b'?' not in target else b'' if target.endswith((b'?', b'&')) else b'&'
    return target + separator + query.encode('ascii')


def encode_params(params: Params, **options: Any) -> str:
    """Return `urllib.parse.urlencode(params, doseq=True, **options)`. For layers, too.

    Raises TypeError for what that does not take, and for pairs of bytes. Those are most likely
    headers, which everybody who sees the URL would see.
    """
    from urllib.parse import urlencode  # imported only where it is needed, as in dns()
    try:
        pairs = params.items() if hasattr(params, 'items') else params
        has_fields = any(
            isinstance(name, bytes) and isinstance(value, bytes) for name, value in pairs)
        query = '' if has_fields else urlencode(params, doseq=True, **options)
    except (TypeError, ValueError) as cause:
        raise TypeError('params must be a mapping or a sequence of pairs, as for '
                        f'urllib.parse.urlencode, got {type(params).__name__}') from cause
    if has_fields:
        raise TypeError('params must be pairs of str, got pairs of bytes: were they headers?')
    return query


# --------------------------------------------------------------------------------- sending
#
# The caller's chunks, held to what the head declared of them: a chunk is checked before any
# of it is sent. The generator's own time does not count towards the time to write.

def to_bytes(chunk: Any) -> bytes:
    try:
        return bytes(memoryview(chunk))
    except TypeError:
        raise TypeError(f'the body must yield bytes, got {type(chunk).__name__}') from None


async def send_with_body(
        connection: Connection, exchange: Exchange, head: bytes,
        body: Body, body_args: Iterable[Any], body_kwargs: Kwargs) -> RequestBody | None:
    """Send the whole request, or as much of it as the server wants.

    If a response below 300 comes before that, return what goes on with the sending.
    """
    if exchange.declared.expects and exchange.declared.has_body:
        await connection.send(head)
        if await is_answered(connection, exchange):
            exchange.request_sent = False
            return None
        head = b''
    request_body = connection.body_type(
        connection, exchange, head, body, body_args, body_kwargs)
    try:
        await request_body.send()
    except GeneratorExit:
        request_body.abandon()
        raise
    except BaseException as error:
        exchange.request_sent = False
        failure: BaseException | None = error
        if isinstance(error, OSError) and exchange.doing is not REQUEST_BODY:
            failure = hear_out(connection, exchange, error)
        if failure is not None:
            connection.close('the request was not sent')
        try:
            await request_body.close(error)
            if failure is not None:
                raise failure
        finally:
            # By its traceback, it refers to this frame.
            failure = None
        if exchange.head.code < b'300' or exchange.may_be_cut_off(error):
            request_body.note_failure(error)
            return request_body
    else:
        if not request_body.is_over:
            exchange.request_sent = False
            if exchange.head.code < b'300':
                connection.stop_write_time()
                return request_body
            exchange.request_sent = request_body.is_all_sent()
            await request_body.close()
    return None


async def is_answered(connection: Connection, exchange: Exchange) -> bool:
    """Wait for 100 Continue, but not for long. A final response may come instead."""
    exchange.doing = AWAITING_CONTINUE
    deadline = min(connection.loop.time() + CONTINUE_TIMEOUT, connection.read_end())
    with contextlib.suppress(TimeoutError):
        while not exchange.is_continued and exchange.decoder is None:
            await connection.read(deadline)
    return exchange.decoder is not None


def hear_out(connection: Connection, exchange: Exchange, error: OSError) -> Exception | None:
    """The sending has failed. What the peer had said before tells why, as far as it has arrived.

    Returns the error that the request fails with, or None if what came is its response. Below 300,
    that is so only if the peer has ended the connection, and then its reader gets the error. If no
    send has succeeded, what came is no response to this request.
    """
    try:
        while exchange.decoder is None:
            connection.receive()
    except (OSError, EOFError, ValueError) as said:
        return said if is_alert(said) else error
    is_response = exchange.sent is SENT_SOMETHING and not exchange.is_switched and (
        exchange.head.code >= b'300' or isinstance(error, PEER_CLOSED))
    return None if is_response else error


class Expected:
    """A part of a chunked body beside the content (RFC 9112 7.1).

    What is tolerated in a response is not sent: some servers read it differently.
    """

    __slots__ = ('name', 'whole', 'begun')

    def __init__(self, name: str, whole: bytes, begun: bytes) -> None:
        self.name = name
        self.whole = re.compile(whole)
        # Matches the beginnings of it, for as long as its end has not come.
        self.begun = re.compile(begun)

    def __repr__(self) -> str:
        return f'<Expected {self.name}>'


VALUE = FIELD_VALUE.pattern
CHUNK_SIZE = Expected('a chunk-size line', rb'([0-9A-Fa-f]{1,16})(?:;%b)?\r\n' % VALUE,
                      rb'[0-9A-Fa-f]{1,16}(?:;%b)?\r?' % VALUE)
CHUNK_END = Expected('CRLF after the chunk', rb'\r\n', rb'\r')
TRAILER = Expected('a trailer or the empty line', rb'(?:%b:%b)?\r\n' % (TOKEN.pattern, VALUE),
                   rb'%b(?::%b\r?)?|\r' % (TOKEN.pattern, VALUE))
NOTHING = Expected('nothing after the last chunk', rb'(?!)', rb'(?!)')


class SentChunks:
    """Holds a request body to the framing of `transfer-encoding: chunked`.

    Bytes that are only content, as of another message that had this field, would be read as chunks
    that somebody else has chosen, and what follows them as another request.
    """

    __slots__ = ('expected', 'left', 'begun')

    def __init__(self) -> None:
        self.expected = CHUNK_SIZE
        # Bytes of content that come before it, and the part of it that has come.
        self.left = 0
        self.begun = b''

    def __repr__(self) -> str:
        return f'<SentChunks {self.left} bytes before {self.expected.name}>'

    def check(self, data: bytes) -> None:
        """Raise, unless the body may go on like this."""
        # Usually the data is one whole chunk.
        if self.expected is CHUNK_SIZE and not self.begun:
            line = CHUNK_SIZE.whole.match(data)
            if line is not None and data.endswith(b'\r\n'):
                size = int(line[1], 16)
                if size and line.end() + size + 2 == len(data):
                    return
        data = self.begun + data
        start = 0
        while start < len(data):
            if self.left:
                start += self.left
                self.left = max(start - len(data), 0)
            elif (part := self.expected.whole.match(data, start)) is not None:
                start = part.end()
                self.expect_next(part)
            else:
                break
        self.begun = data[start:]
        if self.begun and not (len(self.begun) <= MAX_SENT_LINE
                               and self.expected.begun.fullmatch(self.begun)):
            raise ValueError('the body must be encoded as transfer-encoding chunked says: '
                             f'expected {self.expected.name}, but it yielded something else')

    def expect_next(self, part: re.Match[bytes]) -> None:
        if self.expected is CHUNK_SIZE:
            self.left = int(part[1], 16)
            self.expected = CHUNK_END if self.left else TRAILER
        elif self.expected is CHUNK_END:
            self.expected = CHUNK_SIZE
        elif part[0] == b'\r\n':
            self.expected = NOTHING


class RequestBody(Steps):
    """Sends the chunks that the caller's generator yields, held to what the head declared of them.

    The sending is a coroutine that is stepped, so that a response is noticed that comes while the
    generator waits, or the peer does not read. Until a response has come, `request` steps it, and
    then whoever reads the content.

    A send for each small chunk would cost more than all else. So they are gathered for as long as
    the generator does not wait. When it does, what it has yielded leaves first, and if there is no
    room for that, then the steps wait for room before they wait for what the generator waits for.
    """

    __slots__ = ('connection', 'exchange', 'head', 'gathered', 'size', 'chunks', 'left',
                 'framing', 'cancelling', 'interrupted_at', 'is_blocked', 'asked', 'is_stopped',
                 'failure', 'surplus', 'peer_has_ended')

    def __init__(self, connection: Connection, exchange: Exchange, head: bytes,
                 body: Body, body_args: Iterable[Any], body_kwargs: Kwargs) -> None:
        self.connection = connection
        self.exchange = exchange
        exchange.doing = REQUEST_BODY
        if not callable(body):
            raise TypeError('body must be a function that returns an async iterator of bytes, as '
                            f'streamed(data) is, got {type(body).__name__}')
        self.chunks = iterator_of(body(*body_args, **dict(body_kwargs)))
        # Empty once content was gathered behind it, or it was sent alone.
        self.head = head
        # What the next send sends, and the bytes in it.
        self.gathered: list[bytes | memoryview] = []
        self.size = 0
        # There is no room for it, although the generator waits, and what the generator waits for.
        self.is_blocked = False
        self.asked: asyncio.Future[Any] | None = None
        declared = exchange.declared
        self.framing: SentChunks | None = None
        # How many bytes may follow.
        self.left = declared.length or 0
        if declared.is_coded:
            # It has an end of its own. `left` starts below 0, and falls with each of its bytes.
            self.framing = SentChunks()
            self.left = -1
        self.cancelling = current_task().cancelling()
        # What that was when the generator was last interrupted.
        self.interrupted_at = 0
        # Nothing more is sent, whatever the generator yields.
        self.is_stopped = False
        # Why the rest could not be sent, while the response goes on.
        self.failure: BaseException | None = None
        # Bytes that have come behind the whole response, and whether the end has, too.
        self.surplus = 0
        self.peer_has_ended = False
        super().__init__(connection.loop, self.send_all())

    def __repr__(self) -> str:
        left = f'{self.left} bytes left' if self.framing is None else 'chunked'
        return f'<RequestBody {left}>'

    def __del__(self) -> None:
        # In a cycle, this comes before the finalizer of the generator, which is younger, and which
        # the loop would close in a task. If `body` was not callable, there is nothing to end.
        if not getattr(self, 'is_over', True):
            self.connection.close_from_anywhere(self)

    async def send(self) -> None:
        """Send the request, to its end or until a response has come."""
        connection, exchange = self.connection, self.exchange
        try:
            self.step()
        except StopIteration:
            return
        while not (self.is_over or self.may_return()):
            if exchange.decoder is not None:
                await connection.wait_beside(self)
            else:
                try:
                    await connection.read_beside(self)
                except Exception as error:
                    exchange.blame_response(error)
                    raise
            self.advance()

    def may_return(self) -> bool:
        """A response has come that does not have to wait for more of the request.

        After 101 it has to, and below 300 if the generator has to answer a cancellation first.
        """
        exchange = self.exchange
        return exchange.decoder is not None and (
            exchange.head.code >= b'300'
            or exchange.head.code != b'101' and not self.is_cancelled())

    def is_cancelled(self) -> bool:
        """The generator has to answer a cancellation, and has not taken it back, as a time-out of
        its own does."""
        if self.cancel_args is not None and current_task().cancelling() <= self.cancelling:
            self.cancel_args = None
        return self.cancel_args is not None

    async def read(self) -> Any:
        """The content that has come, or that comes while the request is being sent. Returns no
        bytes once the sending is over."""
        exchange = self.exchange
        try:
            chunk = self.read_at_once() or await self.read_and_send()
        except GeneratorExit:
            self.abandon()
            raise
        except BaseException as error:
            self.connection.close('the exchange failed')
            await self.close(error)
            raise
        if chunk:
            return chunk
        if not exchange.request_sent:
            # The peer has ended the connection.
            exchange.request_sent = self.is_all_sent()
            await self.close()
        if self.failure is None:
            exchange.doing = READING
        return b''

    def read_at_once(self) -> Any:
        """What has come while the sending waits. Nothing else is to be done then, and over TLS
        each of the many records would take its time."""
        connection, exchange = self.connection, self.exchange
        if (self.is_ready() or self.is_cancelled() or exchange.is_received
                or connection.burst >= MAX_BURST):
            return b''
        try:
            return connection.read_at_once()
        except Exception:
            self.cancelling = current_task().cancelling()
            exchange.doing = READING
            raise

    async def read_and_send(self) -> Any:
        """Send and read by turns, until there is content, or until the sending is over."""
        connection, exchange = self.connection, self.exchange
        self.cancelling = current_task().cancelling()
        # While nobody reads, nothing is sent, and no time runs.
        connection.restart_write_time()
        try:
            while not (self.go_on() or self.peer_has_ended or exchange.peer_has_ended):
                if connection.burst >= MAX_BURST:
                    connection.burst = 0
                    await self.wait(None)
                    continue
                chunk = await self.read_or_step()
                if chunk:
                    return chunk
        finally:
            connection.stop_write_time()
        return b''

    def go_on(self) -> bool:
        """Send what can be sent without waiting. True if nothing more can be sent at all."""
        exchange = self.exchange
        try:
            self.advance()
            exchange.request_sent = self.is_over
        except PEER_CLOSED as error:
            if exchange.doing is REQUEST_BODY:
                raise
            # What the peer had said before can still be read.
            self.note_failure(error)
        return self.is_over or self.failure is not None

    def note_failure(self, error: BaseException) -> None:
        """Keep it for the reader, but not the chunk that was being sent."""
        clear_frames(error.__traceback__)
        self.failure = error

    async def read_or_step(self) -> Any:
        """Read, or wait until it is possible to read, or to go on with the sending."""
        connection, exchange = self.connection, self.exchange
        if self.is_cancelled():
            # The generator has to answer a cancellation before there can be content.
            await connection.wait_beside(self)
            return b''
        if not exchange.is_received:
            try:
                return await connection.read_beside(self)
            except Exception:
                exchange.doing = READING
                raise
        if not exchange.is_last or self.surplus > connection.endpoint.recv_bufsize:
            # Its end would not be that of the sending, or is not looked for any longer.
            await connection.wait_beside(self)
            return b''
        try:
            return await connection.read_beside(self, self.feed_rest)
        except OSError:
            if connection.state is CLOSED:
                raise
            # Nothing of the response is cut off. A reset is the end that a server's system makes
            # of a connection that is closed before all has been read from it.
            return self.feed_rest(b'')

    def feed_rest(self, data: bytes) -> bytes:
        """Take what comes behind the whole response. It is never delivered."""
        self.surplus += len(data)
        self.peer_has_ended = not data
        return b''

    def advance(self) -> None:
        """Send what can be sent without waiting."""
        if not self.is_over and self.is_ready():
            try:
                self.step()
            except StopIteration:
                return

    # As steps

    def step(self) -> None:
        if not self.is_blocked:
            super().step()
            return
        room = self.unblock()
        try:
            room.result()
        finally:
            # It may have failed, and then its error has this frame.
            del room
        self.send_at_once()

    def suspend(self, waited_for: Any) -> None:
        super().suspend(waited_for)
        if (self.exchange.doing is REQUEST_BODY
                and not (self.is_stopped or self.is_ending() or self.to_throw)):
            # It is the generator that waits, and it is to go on after that.
            self.send_at_once()

    def is_ending(self) -> bool:
        """The generator waits while it answers a cancellation, which it has not taken back."""
        return self.cancel_args is not None and \
            0 < self.interrupted_at <= current_task().cancelling()

    def interrupt(self, args: tuple[Any, ...] = ()) -> None:
        task = asyncio.current_task(self.loop)
        self.interrupted_at = 0 if task is None else task.cancelling()
        if self.is_blocked:
            # It is the generator that hears of it, and does not wait for room any longer.
            self.unblock().cancel()
            self.exchange.doing = REQUEST_BODY
        super().interrupt(args)

    def unblock(self) -> asyncio.Future[Any]:
        """Go back to what the generator waits for. Return what has waited for room."""
        room = self.waited_for
        assert room is not None
        self.waited_for, self.asked, self.is_blocked = self.asked, None, False
        return room

    def send_at_once(self) -> None:
        """Send what the generator has yielded before it waits. If there is no room for all of it,
        wait for that first."""
        self.gather_head()
        data = self.take_gathered()
        while data:
            count = self.connection.send_at_once(data)
            if not count:
                self.gather(data)
                self.asked, self.waited_for = self.waited_for, self.connection.writer
                self.is_blocked, self.is_bare = True, False
                return
            data = data[count:]
        self.exchange.doing = REQUEST_BODY

    # What is sent

    async def send_all(self) -> None:
        """Send the head along with the first chunks, and then the other chunks."""
        try:
            await self.send_chunks()
            if self.is_stopped:
                return
            self.check_end()
        except Exception:
            if self.exchange.doing is REQUEST_BODY and not self.is_stopped:
                await self.send_before_error()
            raise
        self.gather_head()
        await self.send_gathered()

    async def send_chunks(self) -> None:
        connection, exchange, gathered = self.connection, self.exchange, self.gathered
        ask = self.chunks.__anext__
        count = 0
        while True:
            try:
                chunk = await ask()
            except StopAsyncIteration:
                return
            # If it has been cancelled, it has gone on.
            self.cancel_args = None
            if self.is_stopped:
                return
            if not isinstance(chunk, bytes):
                chunk = to_bytes(chunk)
            self.left -= len(chunk)
            if self.left < 0:
                self.check(chunk)
            if self.head and chunk:
                self.gather_head()
            count += 1
            if len(chunk) < MAX_GATHERED:
                gathered.append(chunk)
                self.size += len(chunk)
                if self.size < MAX_GATHERED and count < MAX_GATHERED_CHUNKS:
                    continue
                if self.size:
                    await self.send_gathered()
                else:
                    # So many chunks without a byte are a burst, too.
                    await connection.take_turns()
            else:
                await self.send_long(chunk)
            connection.burst += count * COST_OF_CALL
            count = 0
            if self.left and exchange.decoder is None and connection.has_come():
                # A response may end the sending, so it is read before more is asked for.
                await connection.take_turns()

    def gather(self, data: bytes | memoryview) -> None:
        self.gathered.append(data)
        self.size += len(data)

    def gather_head(self) -> None:
        if self.head:
            self.gather(self.head)
            self.head = b''

    def take_gathered(self) -> bytes:
        data = b''.join(self.gathered)
        self.gathered.clear()
        self.size = 0
        return data

    async def send_gathered(self) -> None:
        if self.size:
            await self.connection.send(self.take_gathered())
            self.exchange.doing = REQUEST_BODY

    async def send_long(self, chunk: bytes) -> None:
        """Send a chunk that is too long to be gathered. Only its beginning is copied."""
        rest = memoryview(chunk)
        if self.size:
            self.gather(rest[:MAX_GATHERED])
            rest = rest[MAX_GATHERED:]
            await self.send_gathered()
        await self.connection.send(rest)
        self.exchange.doing = REQUEST_BODY

    async def send_before_error(self) -> None:
        """Send what was yielded before. A head alone does not leave any more."""
        if self.cancel_args is None:
            await self.send_gathered()
        elif self.size and self.is_cancelled():
            # It was the sending that has waited, so this is as if that had been cancelled.
            raise CancelledError(*self.cancel_args) from None

    def check(self, chunk: bytes) -> None:
        """Raise, unless the body may go on with this chunk."""
        if self.framing is not None:
            self.framing.check(chunk)
        else:
            length = self.exchange.declared.length
            raise ValueError(
                'the body yielded bytes, but headers has no content-length or transfer-encoding'
                if length is None else
                f'the body yielded more than its content-length of {length}')

    def check_end(self) -> None:
        length = self.exchange.declared.length
        if self.left > 0:
            hint = '' if self.left != length else \
                ': it yielded nothing, as an iterator that was used before'
            raise ValueError(f'the body ended {self.left} bytes short of its content-length of '
                             f'{length}{hint}')
        if self.framing is not None and self.framing.expected is not NOTHING:
            when = 'too early' if self.left < -1 else 'without a byte'
            raise ValueError(f'the body ended {when}, but transfer-encoding chunked needs its '
                             'last chunk')

    def is_all_sent(self) -> bool:
        """All that was declared has been sent, although the generator has not ended."""
        is_whole = self.framing.expected is NOTHING if self.framing is not None else \
            self.left == 0 and self.exchange.declared.length is not None
        is_gathered = self.head or self.size
        return not is_gathered and is_whole and self.exchange.doing is REQUEST_BODY

    async def close(self, error: BaseException | None = None) -> None:
        """Let the caller's generator clean up now. Left to itself, it would do so in a task.

        The caller hears of `error`, if that made us close. But a new cancellation wins, and so
        does what the generator makes of a cancellation that was its own, as `asyncio.timeout` has.
        """
        task = current_task()
        cancelling = task.cancelling()
        self.is_stopped = True
        try:
            try:
                if not self.is_over:
                    # The generator may still be handling an earlier cancellation. This repeats
                    # that one, so it has the same message.
                    self.interrupt(
                        error.args if isinstance(error, CancelledError) else
                        self.cancel_args or () if cancelling > self.cancelling else ())
                    await self.run()
            finally:
                await self.close_chunks()
        except (CancelledError, Exception) as ended:
            # It may have been cleaning up after an earlier cancellation, unless it has gone on.
            is_first = (isinstance(ended, CancelledError) and self.cancel_args is not None
                        and cancelling > self.cancelling)
            if self.is_own(error, cancelling) or task.cancelling() > cancelling or is_first:
                self.exchange.doing = REQUEST_BODY
                raise
        else:
            if self.is_own(error, cancelling):
                raise TimeoutError('a time-out in the body passed ' + (
                    'before the head was sent' if self.exchange.sent is SENT_NOTHING else
                    'while the request was being sent'))

    def is_own(self, error: BaseException | None, cancelling: int) -> bool:
        """The generator has taken its cancellation back, and there is none from outside."""
        now = current_task().cancelling()
        return isinstance(error, CancelledError) and self.cancelling >= now < cancelling

    async def close_chunks(self) -> None:
        if hasattr(self.chunks, 'aclose'):
            await self.chunks.aclose()

    def abandon(self) -> None:
        """Close the generator where nothing can be awaited. Left to itself, it would be closed in
        a task."""
        self.is_stopped = True
        super().abandon()
        closing = Steps(self.loop, self.close_chunks())
        with contextlib.suppress(CancelledError, Exception):
            closing.step()
        closing.abandon()


def iterator_of(chunks: Any) -> AsyncIterator[bytes]:
    """Return the async iterator of what a `body` function has returned."""
    if not hasattr(chunks, '__aiter__'):
        if isinstance(chunks, types.CoroutineType):
            chunks.close()
        raise TypeError('body must return an async iterator of bytes, as an async function '
                        f'that yields does, got {type(chunks).__name__}')
    return aiter(chunks)


# --------------------------------------------------------------------------- response head
#
# Turns bytes into a `Head`, and hands what follows it to the exchange. These are pure functions
# and own nothing but the bytes of an unfinished head. A line is judged when its end has arrived,
# and a section when its end has, so the outcome does not depend on how the bytes were cut on
# their way.

# RFC 9112 4. The space before the reason may be missing if there is no reason, as others accept.
# RFC 9110 2.5: a minor version that is higher than ours is read as ours.
STATUS_LINE = re.compile(rb'HTTP/1\.([0-9]) ([0-9]{3})(?: ([^\r\x00]*))?\r?')

# Fields that servers repeat from one response to the next, and that are nobody's secret. Other
# fields may hold anything: a cookie, a signed URL, a nonce, or a token under any name.
REPEATED = frozenset((
    b'accept-ranges', b'access-control-allow-credentials', b'access-control-allow-headers',
    b'access-control-allow-methods', b'access-control-allow-origin',
    b'access-control-expose-headers', b'access-control-max-age', b'age', b'allow', b'alt-svc',
    b'cache-control', b'connection', b'content-encoding', b'content-language', b'content-length',
    b'content-type', b'cross-origin-embedder-policy', b'cross-origin-opener-policy',
    b'cross-origin-resource-policy', b'date', b'etag', b'expires', b'keep-alive',
    b'last-modified', b'permissions-policy', b'pragma', b'referrer-policy', b'server',
    b'strict-transport-security', b'transfer-encoding', b'vary', b'via',
    b'x-content-type-options', b'x-dns-prefetch-control', b'x-frame-options',
    b'x-permitted-cross-domain-policies', b'x-powered-by', b'x-xss-protection'))


class HeadParser:
    """Receives the head of the first response that is not interim (RFC 9110 15.2)."""

    __slots__ = ('heads', 'may_upgrade', 'data', 'searched', 'status', 'interims', 'is_continued')

    def __init__(self, heads: Heads, may_upgrade: bool) -> None:
        self.heads = heads
        self.may_upgrade = may_upgrade
        # The bytes of the head that have arrived. When it is done, those that came after it.
        self.data = b''
        # Where the search for the end of the head goes on.
        self.searched = 0
        # The minor version, the code and the reason, once the status line has arrived.
        self.status: tuple[bytes, bytes, bytes] | None = None
        self.interims = 0
        self.is_continued = False

    def __repr__(self) -> str:
        return (f'<HeadParser {len(self.data)} bytes so far, after {self.interims} interim '
                'responses>')

    def feed(self, data: bytes) -> Head | None:
        """Take what has arrived, and return the head once all of it has."""
        data = self.data + data
        heads = self.heads
        while data:
            if self.status is None:
                line_end = data.find(b'\n', self.searched)
                if 0 <= line_end < heads.limit:
                    self.status = heads.status_lines[data[:line_end]]
            section = SECTION_END.search(data, self.searched)
            length = len(data) + 1 if section is None else section.end()
            if length > heads.limit:
                raise too_long('head', heads.limit)
            if section is None or self.status is None:
                self.searched = max(len(data) - 3, 0)
                self.data = data
                break
            minor, code, reason = self.status
            fields = parse_fields(
                data, data.index(b'\n') + 1, section.start(1), heads.field_of_line)
            self.data = data[length:]
            if not code.startswith(b'1') or code == b'101':
                if code == b'101' and not self.may_upgrade:
                    raise ValueError(
                        'got 101 Switching Protocols, but the request had no upgrade')
                return Head(data[:length], minor, code, reason, fields)
            data = self.data
            self.start_again(code)
        return None

    def start_again(self, code: bytes) -> None:
        """Go on after an interim response."""
        self.is_continued = self.is_continued or code == b'100'
        self.interims += 1
        if self.interims > MAX_INTERIM_RESPONSES:
            raise ValueError(f'got more than {MAX_INTERIM_RESPONSES} interim responses')
        self.data = b''
        self.searched = 0
        self.status = None

    def feed_end(self, what: str) -> None:
        raise EOFError('the peer closed the connection, after '
                       + (shown(self.data) if self.data else f'no byte of {what}'))


class Heads(dict[str, 'Head']):
    """The last head of each origin, by its name, and the lines that one pool remembers parsed.

    Most lines of a response are the same as in the last response of its origin. Not parsing them
    again halves the cost of a small response.
    """

    __slots__ = ('limit', 'status_lines', 'field_of_line')

    def __init__(self, max_header_length: int) -> None:
        self.limit = max_header_length
        self.status_lines = Parsed(parse_status_line)
        self.field_of_line = Parsed(
            parse_field_line, lambda _, field: field[0] in REPEATED).__getitem__

    def __repr__(self) -> str:
        return f'<Heads of {len(self)} origins>'

    def store(self, origin_name: str, head: Head) -> None:
        """Remember the head, unless it is a 101: whether that is wanted depends on the request."""
        if (len(head.data) <= MAX_HEAD_LENGTH and head.code != b'101'
                and REPEATED.issuperset([name for name, _ in head.fields])):
            store_latest(self, origin_name, head, MAX_HEADS)
        else:
            # Nothing is compared with it, and the response body keeps the head.
            head.data = b''


def store_latest(known: dict[str, Any], name: str, value: Any, limit: int = MAX_NAMES) -> None:
    """Store it as the latest. If there are too many, the one that was stored first is dropped."""
    known.pop(name, None)
    if len(known) >= limit:
        del known[next(iter(known))]
    known[name] = value


class Parsed(dict[K, V]):
    """What `parse` makes of URLs, origins and lines, so that the usual ones are parsed once.

    It belongs to one pool. What is long, and what `may_keep` refuses, is parsed each time.
    """

    __slots__ = ('parse', 'may_keep')

    def __init__(self, parse: Callable[[K], V],
                 may_keep: Callable[[K, V], bool] = lambda *_: True) -> None:
        self.parse = parse
        self.may_keep = may_keep

    def __repr__(self) -> str:
        return f'<Parsed {len(self)} of at most {MAX_PARSED}>'

    def __missing__(self, key: K) -> V:
        value = self.parse(key)
        if len(key) <= MAX_PARSED_LENGTH and self.may_keep(key, value):
            if len(self) >= MAX_PARSED:
                self.clear()
            self[key] = value
        return value


class Head:
    """Status line and fields of a response, and what they tell of its body."""

    __slots__ = ('data', 'minor', 'code', 'reason', 'fields', 'method', 'make_decoder', 'size',
                 'whole_length', 'keep_alive', 'is_last')

    def __init__(self, data: bytes, minor: bytes, code: bytes, reason: bytes,
                 fields: Fields) -> None:
        self.data = data
        self.minor = minor
        self.code = code
        self.reason = reason
        self.fields = fields
        # The method of the request that the others are for, once they are known.
        self.method = b''
        # The decoder of the body, and what that is made with.
        self.make_decoder: Callable[[int], Decoder]
        self.size = 0
        # Of head and content together, if the head tells that. -1 if it does not.
        self.whole_length = -1
        # Seconds that the connection may idle after the response.
        self.keep_alive: float
        # Whether the connection ends with this response.
        self.is_last: bool

    def __repr__(self) -> str:
        return f'<Head {self.code.decode()}, {len(self.fields)} fields>'


def parse_status_line(line: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the minor version, the code and the reason."""
    match = STATUS_LINE.fullmatch(line)
    if match is None:
        raise ValueError('bad status line: expected HTTP/1.x, a space, three digits '
                         f'and a reason, got {shown(line)}')
    return match[1], match[2], match[3] or b''


# --------------------------------------------------------------------------------- framing
#
# A head and the method of its request tell where the body ends, which decoder finds that end, and
# how long the connection may idle afterwards. A decoder takes the bytes after the head, in pieces
# of any size, and returns the content in them to the body of the response, which owns it.

KEEP_ALIVE_TIMEOUT = re.compile(rb'(?:^|[,; \t])timeout[ \t]*=[ \t]*"?([0-9]{1,9})', re.IGNORECASE)
FRAMING = frozenset((b'content-length', b'transfer-encoding', b'connection', b'keep-alive'))

# RFC 9112 7.1. After the first one, a chunk-size line follows the CRLF that ends the data. Some
# servers pad the size with spaces, with or without an extension after them.
FIRST_CHUNK_LINE = re.compile(rb'([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n\x00]*)?\r\n')
NEXT_CHUNK_LINE = re.compile(rb'\r\n' + FIRST_CHUNK_LINE.pattern)


def framed(head: Head, method: bytes, settings: Settings) -> Head:
    """The head, for a response to that method, by the rules of RFC 9112 6.3, whose numbers are
    given."""
    if head.method:
        # Exchanges with other methods may have it too.
        head = Head(head.data, head.minor, head.code, head.reason, head.fields)
    length, codings, keep_alive = parse_framing(head, settings)
    # 2: a switched protocol has an end of its own, whatever the method. (CONNECT is never sent.)
    if head.code == b'101':
        head.make_decoder, keep_alive = SwitchedDecoder, 0
    # 1: there is no body, whatever the fields say. But some servers send what a 204 declares, and
    # that would be taken for the next response.
    elif method == b'HEAD' or head.code in (b'204', b'304'):
        if head.code == b'204' and (codings is not None or length):
            keep_alive = 0
        head.make_decoder, head.size = LengthDecoder, 0
    # 3 and 4: chunked is stronger than a length.
    elif codings is not None:
        if codings != [b'chunked']:
            raise ValueError('bad transfer-encoding: expected chunked, got '
                             f'{shown(b", ".join(codings))}')
        head.make_decoder, head.size = ChunkedDecoder, settings.max_header_length
    # 5 and 6.
    elif length is not None:
        head.make_decoder, head.size = LengthDecoder, length
    # 8.
    else:
        head.make_decoder, keep_alive = CloseDecoder, 0
    if head.make_decoder is LengthDecoder:
        head.whole_length = len(head.data) + head.size
    head.keep_alive = keep_alive
    head.method = method
    return head


def parse_framing(head: Head, settings: Settings) -> tuple[int | None, list[bytes] | None, float]:
    """Return the content-length, the transfer codings, and how long the connection may idle."""
    length: int | None = None
    codings: list[bytes] | None = None
    persists = head.minor != b'0' and settings.persists_unasked
    is_closing = False
    keep_alive = settings.keep_alive_timeout
    for name, value in head.fields:
        if name in FRAMING:
            if name == b'content-length':
                length = parse_length(value, length)
            elif name == b'transfer-encoding':
                codings = (codings or []) + list_members(value)
            elif name == b'keep-alive':
                keep_alive = min(keep_alive, parse_keep_alive(value))
            else:
                is_closing = is_closing or has_token(value, b'close')  # RFC 9112 9.3
                persists = persists or has_token(value, b'keep-alive')
    # Servers that follow RFC 2616 send identity, although it is no coding.
    if codings == [b'identity']:
        codings = None
    head.is_last = is_closing or not persists
    # RFC 9112 6.1: chunked with a length, or in HTTP/1.0, may be an attack.
    is_suspect = codings is not None and (head.minor == b'0' or length is not None)
    return length, codings, 0 if head.is_last or is_suspect else keep_alive


def parse_length(value: bytes, before: int | None) -> int:
    if not LENGTH.fullmatch(value):
        raise ValueError(f'bad content-length: expected 1 to 20 digits, got {shown(value)}')
    length = int(value)
    if before is not None and length != before:
        raise ValueError(f'bad content-length: expected one, got {before} and {shown(value)}')
    return length


def parse_keep_alive(value: bytes) -> float:
    """Return a second less than the server's `timeout`, so that a request arrives in time."""
    timeout = KEEP_ALIVE_TIMEOUT.search(value)
    return inf if timeout is None else int(timeout[1]) - 1


def has_token(value: bytes, token: bytes) -> bool:
    """Whether the value is a list that has the token."""
    return token in list_members(value)


def list_members(value: bytes) -> list[bytes]:
    """Return the members of a list, in lower case. Empty ones do not count (RFC 9110 5.6.1)."""
    members = [member.strip(b' \t') for member in value.lower().split(b',')]
    return [member for member in members if member]


class Decoder(Protocol):
    """Finds the content in the bytes of a body."""

    is_done: bool = False
    """The last byte of the body has been fed."""

    has_surplus: bool = False
    """More bytes than those of the body have been fed."""

    trailers: Fields = ()

    def __repr__(self) -> str:
        state = 'done' if self.is_done else f'left={getattr(self, "left", inf)}'
        return f'<{type(self).__name__} {state}>'

    def feed(self, data: bytes) -> bytes:
        """Return the content in the data."""

    def feed_end(self) -> bytes:
        """Take the end of the connection. Raises EOFError if it is not that of the body."""


class LengthDecoder(Decoder):
    """RFC 9112 6.2: the body has as many bytes as content-length says."""

    def __init__(self, length: int) -> None:
        self.left = length

    def feed(self, data: bytes) -> bytes:
        self.left -= len(data)
        if self.left <= 0:
            self.is_done = True
            if self.left:
                self.has_surplus = True
                data = data[:self.left]
        return data

    def feed_end(self) -> bytes:
        raise EOFError(f'the peer closed the connection, {self.left} bytes before the end that '
                       'content-length told')


class CloseDecoder(Decoder):
    """RFC 9112 6.3, 8: the body ends when the peer closes the connection."""

    def __init__(self, _: int) -> None:
        """There is nothing to know before."""

    def feed(self, data: bytes) -> bytes:
        return data

    def feed_end(self) -> bytes:
        self.is_done = True
        return b''


class SwitchedDecoder(CloseDecoder):
    """RFC 9110 15.2.2: what follows a 101 is not of HTTP, and ends as the connection does."""


class ChunkedDecoder(Decoder):
    """RFC 9112 7.1: chunks, each of which has its size before it, and then the trailer section."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        # What is left of the content of the current chunk.
        self.left = 0
        # The beginning of a line or of the trailer section whose end has not arrived.
        self.partial = b''
        self.line = FIRST_CHUNK_LINE
        self.is_trailer = False
        # Bytes of content and of framing so far.
        self.content = self.overhead = 0

    def feed(self, data: bytes) -> bytes:
        if self.is_trailer:
            self.feed_trailer(data)
            return b''
        start = 0
        if self.partial:
            # Only a line end can complete the line. Without one, it is not matched once more.
            is_complete = b'\n' in data
            data, self.partial = self.partial + data, b''
            if not is_complete:
                self.store_partial(data)
                return b''
        pieces = []
        while True:
            if self.left:
                piece = data[start:start + self.left]
                pieces.append(piece)
                start += len(piece)
                self.left -= len(piece)
            if start == len(data):
                break
            line = self.line.match(data, start)
            if line is None:
                self.store_partial(data[start:])
                break
            self.start_chunk(line)
            start = line.end()
            if not self.left:
                self.is_trailer = True
                self.feed_trailer(data[start - 1:])
                break
        return pieces[0] if len(pieces) == 1 else b''.join(pieces)

    def start_chunk(self, line: re.Match[bytes]) -> None:
        if line.end() - line.start(1) > self.limit:
            raise too_long('chunk-size line', self.limit)
        self.overhead += line.end() - line.start()
        if self.overhead > MAX_FRAMING_OVERHEAD + MAX_FRAMING_OVERHEAD_RATIO * self.content:
            raise ValueError(f'the framing of the chunked body is out of proportion: '
                             f'{self.overhead} bytes for {self.content} of content')
        self.left = int(line[1], 16)
        self.content += self.left
        self.line = NEXT_CHUNK_LINE

    def store_partial(self, partial: bytes) -> None:
        """Store what matches no chunk-size line until more of it comes, unless it is bad."""
        is_next = self.line is NEXT_CHUNK_LINE
        start = 2 if is_next and b'\r\n'.startswith(partial[:2]) else 0
        end = partial.find(b'\n', start)
        if (end if end >= 0 else len(partial)) - start >= self.limit:
            raise too_long('chunk-size line', self.limit)
        if end >= 0:
            expected = 'CRLF after the chunk, ' if is_next else ''
            raise ValueError(f'bad chunk-size line: expected {expected}1 to 16 hex digits, an '
                             f'optional extension and CRLF, got {shown(partial[:end + 1])}')
        self.partial = partial

    def feed_trailer(self, data: bytes) -> None:
        """Take the trailer section, from the line end before it on."""
        searched = max(len(self.partial) - 3, 0)
        self.partial += data
        section = SECTION_END.search(self.partial, searched)
        if (len(self.partial) if section is None else section.end() - 1) > self.limit:
            raise too_long('trailer section', self.limit)
        if section is not None:
            self.trailers = parse_fields(self.partial, 1, section.start(1), parse_field_line)
            self.is_done = True
            self.has_surplus = section.end() < len(self.partial)
            self.partial = b''

    def feed_end(self) -> bytes:
        raise EOFError('the peer closed the connection in ' + (
            'the trailer section' if self.is_trailer else
            f'a chunk, {self.left} bytes before its end' if self.left else
            'a chunk-size line'))


# That of all responses which have arrived whole, with their heads. Nothing is fed to it.
WHOLE = LengthDecoder(0)
WHOLE.is_done = True


# ---------------------------------------------------------------------- sections of fields
#
# Parses the field lines of a head and of a trailer section, whose end the caller has found.

# RFC 9112 5, RFC 9110 5.5. Leading and trailing whitespace is not part of the value.
FIELD_LINE = re.compile(
    rb'(%b):[ \t]*+([^\r\x00]*[^\r\x00 \t]|)[ \t]*\r?' % TOKEN.pattern)
# RFC 9112 5.2. The lookbehind makes it try a long run of spaces once, and not from each of them.
OBS_FOLD = re.compile(rb'(?<![ \t])(?:[ \t]*+\r?\n[ \t]++)+')
# The empty line at the end of a head or of a trailer section, with the line end before it.
SECTION_END = re.compile(rb'\n(\r?\n)')


def parse_field_line(line: bytes) -> tuple[bytes, bytes]:
    """Return the name in lower case, and the value."""
    match = FIELD_LINE.fullmatch(line)
    if match is None:
        raise ValueError(f'bad field line: expected a token, ":" and a value, got {shown(line)}')
    return match[1].lower(), match[2]


def parse_fields(data: bytes, start: int, end: int,
                 field_of_line: Callable[[bytes], tuple[bytes, bytes]]) -> Fields:
    """Parse the lines from start to end, each of which is just after a line end."""
    if start == end:
        return ()
    section = data[start:end - 1]
    try:
        return tuple(map(field_of_line, section.split(b'\n')))
    except ValueError:
        unfolded = OBS_FOLD.sub(b' ', section)
        if unfolded == section:
            raise
        return tuple(map(field_of_line, unfolded.split(b'\n')))


def too_long(what: str, limit: int) -> TooLong:
    return TooLong(f'the {what} is longer than max_header_length, {limit} bytes')


class TooLong(ValueError):
    """Becomes an `HttpHeaderTooLong`."""


# --------------------------------------------------------------------------- response body

class ReceivedBody:
    """A `ResponseBody`: the content of a response, as an async iterator of bytes.

    It owns its connection until the whole response has arrived and the request has been sent. The
    connection can be used again after that. Closed with `aclose` before, the body closes the
    connection, unless the rest of the response is there. Dropped, it always does. Once it has
    failed, or was closed before all of it was taken, each further reading fails in the same way.
    """

    # `repeatable` makes a weak reference to a body that is sent on.
    __slots__ = ('_chunk', '_connection', '_exchange', '_sending', '_error', '_is_being_read',
                 '_is_being_written', '__weakref__')

    def __init__(self, exchange: Exchange, connection: Connection | None = None,
                 sending: RequestBody | None = None) -> None:
        self._exchange = exchange
        # What of the request has not been sent yet.
        self._sending = sending
        self._error: HttpError | None = None
        self._is_being_read = self._is_being_written = False
        # What has arrived and was not asked for yet. None once all has been asked for at once.
        self._chunk: bytes | None = exchange.content
        del exchange.content
        # None once the whole response has arrived, or has failed.
        self._connection = connection

    def __repr__(self) -> str:
        state = 'failed' if self._error is not None else \
            'arriving' if self._connection is not None else 'arrived'
        return f'<ReceivedBody {state}, {self._exchange!r}>'

    @property
    def trailers(self) -> Fields:
        """The fields after a chunked body, as pairs like those of the headers, once it ended."""
        decoder = self._exchange.decoder
        return () if decoder is None else decoder.trailers

    @property
    def http_version(self) -> bytes:
        """That of the response, as it came: `b'HTTP/1.1'`."""
        return b'HTTP/1.' + self._exchange.head.minor

    @property
    def reason(self) -> bytes:
        """What follows the status code. Empty if nothing does."""
        return self._exchange.head.reason

    @property
    def connection(self) -> ConnectionFacts:
        """The addresses and the TLS of its connection, also after that has closed."""
        return self._exchange.endpoint.facts

    @property
    def request_sent(self) -> bool:
        """The whole request has been sent. If not, the response came first, and ended that, or
        whoever reads it is sending the rest."""
        return self._exchange.request_sent

    def __aiter__(self) -> ReceivedBody:
        return self

    async def __anext__(self) -> bytes:
        chunk = self._chunk or b''
        if chunk:
            self._chunk = b''
        while not chunk:
            connection = self._connection
            if connection is None:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            exchange = self._exchange
            if self._is_being_read:
                cause = RuntimeError('the body is being read by another task')
                raise exchange.error(cause, READING) from cause
            self._is_being_read = True
            try:
                if self._sending is not None and not self._sending.is_over:
                    chunk = await self._sending.read()
                elif exchange.is_switched:
                    chunk = await connection.read_beside(None)
                elif not exchange.is_received:
                    # After a read that was filled there is most often more.
                    chunk = connection.read_at_once() \
                        if connection.is_filled and connection.burst < MAX_BURST else \
                        await connection.read()
                if exchange.is_received and self._finish():
                    continue
            except BaseException as cause:
                if exchange.is_switched and isinstance(cause, (CancelledError, GeneratorExit)):
                    # It has taken nothing, so the next one may go on.
                    raise
                # Whoever asks again must not take what there was for the whole.
                self._fail(cause, READING if self._sending is None else None)
                if not isinstance(cause, Exception):
                    raise
            finally:
                self._is_being_read = False
            if self._error is not None:
                raise self._error
        return chunk

    def _finish(self) -> bool:
        """All of the response has arrived. True if its last bytes may be delivered."""
        sending, connection = self._sending, self._connection
        # It may have been closed between the arrival of the last byte and now.
        if connection is not None and (sending is None or sending.is_over):
            if sending is not None and sending.failure is not None and (
                    not self._exchange.is_last
                    or self._exchange.may_be_cut_off(sending.failure)):
                # Whoever asks next gets to know it.
                self._fail(sending.failure, SENDING)
            else:
                self._connection = self._sending = None
                connection.release()
        return connection is not None

    def _fail(self, cause: BaseException, doing: Doing | None) -> None:
        """Close the connection. The first reason is what each reader gets to know."""
        connection, self._connection = self._connection, None
        if connection is not None:
            if self._sending is not None and self._sending.failure is not None:
                cause, self._sending.failure = self._sending.failure, None
                doing = SENDING
            self._error = self._exchange.error(cause, doing)
            self._error.__cause__ = cause
            connection.close('the response failed, or was closed')

    async def send(self, data: bytes) -> None:
        """Send data to the peer, after 101. One task may send while another one reads.

        Returns when all of it has been handed to the kernel. Each progress has to come within the
        time to write of the request. Raises an `HttpDataError`. Once it has failed, or was
        cancelled, the connection is closed.
        """
        connection = self._connection
        if connection is None or not self._exchange.is_switched or self._is_being_written:
            raise self._not_sent(self._why_unsendable())
        if not isinstance(data, bytes):
            try:
                data = bytes(memoryview(data))
            except TypeError as cause:
                raise self._not_sent(cause) from cause
        self._is_being_written = True
        try:
            await connection.send(data)
        except BaseException as cause:
            self._fail(cause, SENDING)
            if not isinstance(cause, Exception):
                raise
        finally:
            self._is_being_written = False
        if self._connection is None:
            # If it was not the sending that has failed, the reader has met the peer's end.
            raise self._not_sent(self._why_unsendable())

    def _why_unsendable(self) -> Exception:
        exchange = self._exchange
        return (RuntimeError('only after 101 Switching Protocols can more be sent')
                if not exchange.is_switched else
                EOFError('the peer has ended the connection') if exchange.peer_has_ended else
                RuntimeError('another task is sending'))

    def _not_sent(self, cause: Exception) -> HttpError:
        if self._error is not None:
            return self._error
        error = self._exchange.error(cause, SENDING)
        error.__cause__ = cause
        return error

    async def aclose(self) -> None:
        """Close the connection, unless the whole response has arrived.

        What has arrived is taken for that, without waiting, if it is not much. Whoever had not
        taken all of it, and reads on, gets an `HttpDataError`.
        """
        cause = ConnectionAbortedError('the response body was closed before its end')
        if self._connection is not None and not self._take_rest(self._connection):
            self._fail(cause, READING)
        sending = self._sending
        # Whoever is reading also ends the sending.
        if sending is not None and not self._is_being_read:
            self._sending = None
            sending.cancelling = current_task().cancelling()
            await sending.close()
        if self._chunk:
            self._chunk = b''
            if self._error is None:
                self._error = self._exchange.error(cause, READING)
                self._error.__cause__ = cause

    def _take_rest(self, connection: Connection) -> bool:
        """Take what is left of the response if all of it is there. A new connection would cost
        more. True if that has ended the response."""
        exchange = self._exchange
        if (self._sending is not None or self._is_being_read or exchange.is_switched
                or not runs_here(connection.loop)):
            return False
        rest = b''
        with contextlib.suppress(OSError, EOFError, ValueError):
            for _ in range(MAX_READS_OF_REST):
                rest = connection.read_at_once() or rest
                if exchange.is_received:
                    self._connection = None
                    self._chunk = self._chunk or rest
                    connection.release()
                    return True
        return False


class ArrivingBody(ReceivedBody):
    """One that has not arrived yet, so it has a connection, which must not be left open."""

    __slots__ = ()

    def __del__(self) -> None:
        if self._connection is not None:
            self._connection.close_from_anywhere(self._sending)


# ------------------------------------------------------------------ connection and waiting
#
# A connection owns a socket, a waiter for each direction and one timer, and is the only place that
# touches the loop's readers, writers and timers. It has one owner at a time: the acquisition that
# opens it, an exchange, a response body, or the books while it idles. It feeds its exchange with
# what arrives, and knows nothing else of HTTP. `close` is idempotent, and leaves nothing of the
# connection in the loop.
#
# The loop's reader is registered once, for the connection's life, and wakes who waits to read. A
# timeout is a deadline that each wait stores, and one timer that looks at it now and then.

WANT_READ = (BlockingIOError, ssl.SSLWantReadError)
# What a look at the socket asks for. Where the system can tell an end from data, it does so too.
READABLE_OR_ENDED = select.POLLIN | getattr(select, 'POLLRDHUP', 0)

# Why connections close, where it is said in more than one place.
HAS_EXPIRED = 'keep_alive_timeout'
PEER_HAS_CLOSED = 'the peer has closed it, or has sent something'


def wake(waiter: asyncio.Future[None], _: object = None) -> None:
    if not waiter.done():
        waiter.set_result(None)


def close_socket(sock: socket.socket) -> None:
    """Whatever the system has to say to that, the descriptor is gone."""
    with contextlib.suppress(OSError):
        sock.close()


def forget_tls_error() -> None:
    """CPython 3.14 and 3.15 leave the system's error of a TLS write in OpenSSL's queue of errors,
    which the whole thread has in common. The next TLS call that has to wait would find it there,
    and another connection would fail with it. To refuse a context its ciphers clears the queue.
    """
    with contextlib.suppress(ssl.SSLError):
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).set_ciphers('no such cipher')


class Arrival:
    """What a task awaits until data has come.

    It is like a future, but its result wakes the task at once. That of a future does so in the
    next turn of the loop, which costs a tenth of a small request. So the result is only set by
    what the loop itself calls, when that has nothing left to do: the task may do anything.
    """

    __slots__ = ('loop', 'callbacks', 'value', 'error', '_asyncio_future_blocking')

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        # With their contexts. None once it is done.
        self.callbacks: list[tuple[Callable[[Any], object], Context]] | None = []
        self.value: Any
        self.error: BaseException | None = None
        # A task sees by it that this can be awaited, as `asyncio.isfuture` tells.
        self._asyncio_future_blocking: bool

    def __repr__(self) -> str:
        return f'<Arrival {"done" if self.done() else "pending"}>'

    def __await__(self) -> Generator[Any, None, Any]:
        self._asyncio_future_blocking = True
        yield self
        return self.result()

    def get_loop(self) -> Loop:
        return self.loop

    def done(self) -> bool:
        return self.callbacks is None

    def result(self) -> Any:
        if self.error is None:
            return self.value
        # The traceback will have the frames that have this, so it would be a cycle.
        error, self.error = self.error, None
        try:
            raise error
        finally:
            del error

    def add_done_callback(self, callback: Callable[[Any], object], *,
                          context: Context | None = None) -> None:
        if self.callbacks is None:
            self.loop.call_soon(callback, self, context=context)
        else:
            # A context without variables is as good as false.
            self.callbacks.append(
                (callback, copy_context() if context is None else context))

    def remove_done_callback(self, callback: Callable[[Any], object]) -> None:
        if self.callbacks is not None:
            self.callbacks = [each for each in self.callbacks if each[0] != callback]

    def set_result(self, value: Any) -> None:
        """Run the task that waits."""
        self.value = value
        callbacks, self.callbacks = self.callbacks, None
        while callbacks:
            callback, context = callbacks.pop(0)
            context.run(callback, self)
            # If the task has raised, the frames of its error refer to this one, where it was
            # resumed, so that would be a cycle.
            del callback, context

    def set_exception(self, error: BaseException) -> None:
        self.error = error
        callbacks, self.callbacks = self.callbacks, None
        for callback, context in callbacks or ():
            self.loop.call_soon(callback, self, context=context)

    def exception(self) -> BaseException | None:
        return self.error

    def cancelled(self) -> bool:
        return isinstance(self.error, CancelledError)

    def cancel(self, msg: Any = None) -> bool:
        if self.done():
            return False
        self.set_exception(CancelledError() if msg is None else CancelledError(msg))
        return True


# Who gets one may do with it what can be done with a future.
new_arrival: Callable[[Loop], asyncio.Future[Any]] = Arrival  # type: ignore[assignment]


class TlsSession:
    """The session of an origin, to be resumed by its next connections (RFC 8446 2.2).

    A ticket may serve once, or expire, and a server may be restarted, so a later one is read from
    each connection: in TLS 1.3 they come after the handshake, so after the first response. Where
    to read one loses memory, a session is read once and used until a server refuses it. After one
    that was hardly of use, more and more connections pass before the next one is read.
    """

    __slots__ = ('session', 'uses', 'to_pass', 'pause')

    def __init__(self) -> None:
        self.session: ssl.SSLSession | None = None
        # Connections that have resumed it, those that pass before one is read, and those that
        # will after the next refusal.
        self.uses = 0
        self.to_pass: float = 0
        self.pause = 0

    def __repr__(self) -> str:
        what = 'nothing to resume' if self.session is None else f'resumed {self.uses} times'
        return f'<TlsSession {what}, read after {self.to_pass} more connections>'

    def store(self, sock: ssl.SSLSocket) -> None:
        if self.to_pass:
            self.to_pass -= 1
        else:
            self.session = sock.session
            self.to_pass = inf if SESSIONS_ARE_LOST else 0

    def judge(self, session: ssl.SSLSession, is_resumed: bool) -> None:
        if is_resumed:
            self.uses += 1
        elif session is self.session:
            self.session = None
            if self.uses >= WORTHWHILE_USES or not SESSIONS_ARE_LOST:
                self.pause = 0
            self.to_pass = self.pause
            self.pause = min(2 * self.pause + 1, MAX_SESSION_PAUSE)
            self.uses = 0


# A connection's place belongs to the acquisition that opens it while it is CONNECTING. The books
# have the connection while it is IDLE. It has no descriptor any more when it is CLOSED.
State = Enum('State', 'CONNECTING OPEN IDLE CLOSED')
CONNECTING, OPEN, IDLE, CLOSED = State

# What a reader is woken by. Who awaits DATA gets what the exchange makes of it. READABLE is as the
# selector says, and BESIDE the sending waits, too. STEPS are those of the sending alone, and the
# connection is not read meanwhile.
Awaits = Enum('Awaits', 'DATA READABLE BESIDE STEPS')
DATA, READABLE, BESIDE, STEPS = Awaits


class Connection:
    __slots__ = (
        'loop', 'sock', 'fd', 'poller', 'state', 'endpoint', 'place', 'tls_session', 'exchange',
        'requests', 'reader', 'awaits', 'deadline', 'writer', 'write_deadline', 'is_reading',
        'is_writing', 'timer', 'timer_at', 'burst', 'is_filled')

    # Those of a connection that is watched are of other types.
    exchange_type: type[Exchange] = Exchange
    body_type = RequestBody

    def __init__(self, loop: Loop, sock: socket.socket, endpoint: Endpoint,
                 place: OriginBooks) -> None:
        sock.setblocking(False)
        self.loop = loop
        self.sock = sock
        self.fd = sock.fileno()
        # A look through it is a third of the price of a read that finds nothing.
        self.poller = select.poll()
        self.poller.register(self.fd, READABLE_OR_ENDED)
        self.state = CONNECTING
        self.endpoint = endpoint
        # The books that count it.
        self.place = place
        # Until the first response.
        self.tls_session: TlsSession | None = None
        # Set from the request to the end of its response, and only then.
        self.exchange: Exchange
        self.requests = 0
        # Who waits to read. If the loop is not reading, then the read wants to write before.
        self.reader: asyncio.Future[Any] | None = None
        self.awaits = DATA
        # When the reader's time is over, or when the idle connection expires.
        self.deadline = inf
        # Who waits to write. If the loop is not writing, then the write wants to read before.
        self.writer: asyncio.Future[None] | None = None
        self.write_deadline = inf
        # What the loop watches the descriptor for.
        self.is_reading = False
        self.is_writing = False
        self.timer: asyncio.TimerHandle | None = None
        self.timer_at = inf
        # Bytes moved since the loop had its last turn.
        self.burst = 0
        # The last read gave as much as was asked for, so there may be more.
        self.is_filled = False
        place.books.opened.add(self)

    def __repr__(self) -> str:
        return f'<Connection {self.endpoint.shown} {self.state.name} {self.requests} requests>'

    # Opening

    def start_connecting(self, address: tuple[Any, ...]) -> bool:
        """True if that is all. Otherwise it can be checked once it is writable."""
        try:
            self.sock.connect(address)
        except BlockingIOError:
            # A peer on the same machine has most often accepted already. A failure is left to the
            # loop: whoever tries again and again would leave no turn to others.
            self.poller.register(self.fd, select.POLLOUT)
            events = self.poller.poll(0)
            self.poller.register(self.fd, READABLE_OR_ENDED)
            if events != [(self.fd, select.POLLOUT)]:
                self.start_writing()
                return False
        return True

    def check_connected(self) -> None:
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))

    async def start_tls(self, context: ssl.SSLContext, tls_session: TlsSession,
                        deadline: float) -> None:
        # An end without close_notify must not look like one with it, so it is an error.
        sock = self.sock = context.wrap_socket(
            self.sock, server_hostname=self.endpoint.origin.server_hostname,
            do_handshake_on_connect=False, suppress_ragged_eofs=False)
        self.tls_session = tls_session
        session = tls_session.session
        if session is not None:
            sock.session = session
        while True:
            try:
                sock.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self.wait(READABLE, deadline)
            except ssl.SSLWantWriteError:
                await self.wait_writable(deadline)
        if session is not None:
            tls_session.judge(session, bool(sock.session_reused))
        protocol = sock.selected_alpn_protocol()
        if protocol not in (None, 'http/1.1', 'http/1.0'):
            raise ssl.SSLError(
                ssl.SSL_ERROR_SSL, f'the negotiated protocol must be http/1.1, got {protocol!r}')

    def store_session(self, tls_session: TlsSession) -> None:
        """After the first response, since TLS 1.3 sends the session after the handshake."""
        assert isinstance(self.sock, ssl.SSLSocket)
        tls_session.store(self.sock)
        self.tls_session = None

    # One exchange

    async def send(self, data: Buffer) -> None:
        """Hand all of it to the kernel. Each progress starts the time anew."""
        while data:
            count = self.send_at_once(data)
            if not count:
                assert self.writer is not None
                await self.writer
                self.burst = 0
            elif self.burst >= MAX_BURST:
                await self.take_turns()
            if count == len(data):
                return
            data = memoryview(data)[count:]

    def send_at_once(self, data: Buffer) -> int:
        """Hand to the kernel what there is room for. Return how many bytes that was. If it was
        none, `writer` waits for room."""
        exchange = self.exchange
        exchange.doing = SENDING
        try:
            count = self.sock.send(data)
        except (BlockingIOError, ssl.SSLWantWriteError) as blocked:
            if isinstance(blocked, ssl.SSLError):
                exchange.note_tls_write()
            self.wait_writable(self.write_time())
            return 0
        except ssl.SSLWantReadError:
            exchange.note_tls_write()
            if not self.is_reading:
                self.start_reading()
            self.wait_to_write(self.write_time())
            return 0
        except OSError:
            if isinstance(self.sock, ssl.SSLSocket):
                exchange.note_tls_write()
                forget_tls_error()
            raise
        exchange.sent = SENT_SOMETHING
        self.write_deadline = inf
        self.burst += count + COST_OF_CALL
        return count

    async def read(self, deadline: float | None = None) -> Any:
        """What the exchange makes of what is there, or of what comes first."""
        if self.burst >= MAX_BURST:
            await self.take_turns()
        is_blocked = False
        if self.may_read():
            try:
                return self.receive()
            except WANT_READ:
                pass
            except ssl.SSLWantWriteError:
                is_blocked = True
        reader = self.wait(DATA, deadline or self.read_end())
        if is_blocked:
            self.read_when_writable()
        return await reader

    async def read_beside(self, steps: Steps | None,
                          feed: Callable[[bytes], Any] | None = None) -> Any:
        """What the exchange, or `feed`, makes of what is there. If nothing is, wait for that, or
        for the next step, and return no bytes.

        The time is not bounded. Whoever is cancelled here has taken nothing.
        """
        if self.burst >= MAX_BURST and steps is None:
            await self.take_turns()
        is_blocked = False
        if self.may_read():
            try:
                return self.receive(feed)
            except WANT_READ:
                pass
            except ssl.SSLWantWriteError:
                is_blocked = True
            finally:
                # It may have taken what a write has waited for.
                self.wake_writer_to_read()
        reader = self.wait(READABLE if steps is None else BESIDE, inf)
        if is_blocked:
            self.read_when_writable()
        try:
            await (reader if steps is None else steps.wait(reader))
        finally:
            self.reader = None
        self.burst = 0
        return b''

    def read_at_once(self) -> Any:
        """What the exchange makes of what is there. No bytes if nothing is."""
        if self.may_read():
            try:
                return self.receive()
            except (*WANT_READ, ssl.SSLWantWriteError):
                # Whoever waits meets this again.
                pass
            finally:
                self.wake_writer_to_read()
        return b''

    async def wait_beside(self, steps: Steps) -> None:
        """Wait for the next step alone. What comes meanwhile waits in the kernel."""
        if self.state is CLOSED:
            raise ConnectionAbortedError('the connection was closed meanwhile')
        if self.is_reading:
            self.stop_reading()
        self.awaits = STEPS
        # The time is not bounded here either: whoever waited before may have left its deadline.
        self.deadline = inf
        self.reader = reader = self.loop.create_future()
        try:
            await steps.wait(reader)
        finally:
            self.reader = None

    def may_read(self) -> bool:
        if self.state is CLOSED:
            raise ConnectionAbortedError('the connection was closed meanwhile')
        # A look costs as much as a read that finds nothing, which is rare after one that was
        # filled. TLS may hold bytes that no look at the socket sees.
        return bool(self.is_filled or self.poller.poll(0)
                    or isinstance(self.sock, ssl.SSLSocket) and self.sock.pending())

    def has_come(self) -> bool:
        """Something has come, but not the end, which a sending meets as a failure."""
        return self.poller.poll(0) == [(self.fd, select.POLLIN)]

    def receive(self, feed: Callable[[bytes], Any] | None = None) -> Any:
        endpoint = self.endpoint
        self.is_filled = False
        data = self.sock.recv(endpoint.recv_bufsize)
        length = len(data)
        self.is_filled = length >= endpoint.recv_bufsize
        self.burst += length + COST_OF_CALL
        return self.exchange.feed(data) if feed is None else feed(data)

    async def take_turns(self) -> None:
        """Let other tasks run: this one has moved many bytes without waiting."""
        self.burst = 0
        await asyncio.sleep(0)

    def release(self) -> None:
        """The response has ended: become idle, or close.

        A read that was filled may have left bytes behind.
        """
        exchange = self.exchange
        # The exchange may hold secrets, and the connection may idle for a long time.
        del self.exchange
        if exchange.may_reuse() and not (self.is_filled and not self.is_quiet()):
            self.deadline = deadline = self.loop.time() + exchange.head.keep_alive
            if deadline < self.timer_at:
                self.start_timer(deadline)
            if not self.is_reading:
                self.start_reading()
            self.place.books.return_connection(self)
        else:
            self.close('it may not be used again')

    def return_unused(self) -> None:
        """A request was given this connection but did not use it."""
        if self.loop.is_closed() or self.state is CLOSED:
            self.close('the loop is closed')
        else:
            self.start_reading()
            # Its time to idle goes on. The timer may have been due meanwhile.
            self.start_timer(self.deadline)
            self.place.books.return_connection(self)

    def is_reusable(self, peers: Peers | None, now: float) -> bool:
        """It leads to a current or recent address, has not expired, and nothing has come since its
        last response, not even since the loop looked last."""
        return ((peers is None or self.endpoint.peer in peers.addresses
                 or peers.is_recent(self.endpoint.peer, now)) and now < self.deadline
                and (not self.poller.poll(0) or self.is_quiet()))

    def is_quiet(self) -> bool:
        """Neither data nor an end has come. (TLS session tickets are neither.)"""
        try:
            if self.endpoint.origin.is_tls and self.has_partial_record():
                return False
            self.sock.recv(1)
        except WANT_READ:
            return True
        except OSError:
            pass
        return False

    def has_partial_record(self) -> bool:
        """The beginning of a TLS record has come (RFC 8446 5.1).

        OpenSSL would take it and tell us nothing, but it may begin an answer to a request that
        has not been sent.
        """
        data = b''
        with contextlib.suppress(BlockingIOError):
            data = socket.socket.recv(self.sock, 65536, socket.MSG_PEEK)
        end = 0
        while end + 5 <= len(data):
            end += 5 + int.from_bytes(data[end + 3:end + 5], 'big')
        return end != len(data)

    # Waiting

    def read_end(self) -> float:
        return self.loop.time() + self.endpoint.limits.read

    def write_end(self) -> float:
        return self.loop.time() + self.endpoint.limits.write

    def wait(self, awaits: Awaits, deadline: float) -> asyncio.Future[Any]:
        if not self.is_reading:
            self.start_reading()
        if deadline < self.timer_at:
            self.start_timer(deadline)
        self.deadline = deadline
        self.awaits = awaits
        self.reader = reader = \
            new_arrival(self.loop) if awaits is DATA else self.loop.create_future()
        return reader

    def wait_writable(self, deadline: float) -> asyncio.Future[None]:
        if not self.is_writing:
            self.start_writing()
        return self.wait_to_write(deadline)

    def wait_to_write(self, deadline: float) -> asyncio.Future[None]:
        self.set_write_deadline(deadline)
        self.writer = writer = self.loop.create_future()
        return writer

    def wait_writable_with(self, waiter: asyncio.Future[None]) -> None:
        """Wake a waiter that waits for other connections, too. There is no deadline."""
        self.writer = waiter

    def set_write_deadline(self, deadline: float) -> None:
        if deadline < self.timer_at:
            self.start_timer(deadline)
        self.write_deadline = deadline

    def write_time(self) -> float:
        """When the time to write is over. It goes on until there was room. What arrives is no
        progress, because then a peer that sends and never reads could hold us for ever."""
        return self.write_deadline if self.write_deadline < inf else self.write_end()

    def restart_write_time(self) -> None:
        if self.writer is not None:
            self.set_write_deadline(self.write_end())

    def stop_write_time(self) -> None:
        self.write_deadline = inf

    def wake_reader(self, reader: asyncio.Future[Any]) -> None:
        self.reader = None
        wake(reader)

    def wake_writer(self) -> None:
        writer, self.writer = self.writer, None
        if writer is not None:
            wake(writer)

    def wake_writer_to_read(self) -> None:
        if self.writer is not None and not self.is_writing:
            self.wake_writer()

    def read_when_writable(self) -> None:
        """Only the wanted direction is watched, or the loop would find the same bytes again."""
        self.stop_reading()
        self.start_writing()

    # The loop keeps the context in which it is asked, for as long as it watches. That of a request
    # would so be kept for the life of its connection, with all that its variables hold.

    def start_reading(self) -> None:
        Context().run(self.loop.add_reader, self.fd, self.on_readable)
        self.is_reading = True

    def stop_reading(self) -> None:
        # If a forked child goes on with the loop, the loop calls us for the parent's descriptor,
        # which the child has given up.
        if self.state is not CLOSED:
            self.loop.remove_reader(self.fd)
        self.is_reading = False

    def start_writing(self) -> None:
        Context().run(self.loop.add_writer, self.fd, self.on_writable)
        self.is_writing = True

    def stop_writing(self) -> None:
        self.loop.remove_writer(self.fd)
        self.is_writing = False

    def on_readable(self) -> None:
        reader = self.reader
        if reader is not None and self.awaits is DATA:
            # Read for the reader. Until it runs, the loop would find the same bytes again.
            self.burst = 0
            try:
                received = self.receive()
            except WANT_READ:
                pass
            except ssl.SSLWantWriteError:
                self.read_when_writable()
            except Exception as error:
                if not reader.done():
                    reader.set_exception(error)
                # The reader has the error, whose traceback has this frame, so that is a cycle.
                del reader
                self.reader = None
            else:
                self.reader = None
                if self.writer is not None:
                    self.wake_writer_to_read()
                if not reader.done():
                    # Its task runs, and may do anything with this connection.
                    reader.set_result(received)
                return
        elif reader is not None:
            self.wake_reader(reader)
        elif self.state is not IDLE:
            # There is nobody to read for. The loop need not look until somebody reads again.
            self.stop_reading()
        elif not self.is_quiet():
            self.close(PEER_HAS_CLOSED)
        if self.writer is not None:
            self.wake_writer_to_read()

    def on_writable(self) -> None:
        self.stop_writing()
        # There was room, although it may not have been enough for a TLS record.
        self.write_deadline = inf
        if self.reader is not None and not self.is_reading and self.awaits is not STEPS:
            self.start_reading()
            self.on_readable()
        self.wake_writer()
        if self.reader is not None and self.awaits in (BESIDE, STEPS):
            # It waits for the writer, too, and would hear of it one turn of the loop later.
            self.wake_reader(self.reader)

    def start_timer(self, deadline: float) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.timer_at = deadline
        self.timer = self.loop.call_at(deadline, self.on_timer, context=Context())

    def on_timer(self) -> None:
        now, self.timer, self.timer_at = self.timer_at, None, inf
        if self.deadline <= now:
            if self.state is IDLE:
                self.close(HAS_EXPIRED)
                return
            reader, self.reader = self.reader, None
            self.fail_late(reader, 'read')
        if self.write_deadline <= now:
            writer, self.writer = self.writer, None
            self.fail_late(writer, 'write')
        later = [at for at in (self.deadline, self.write_deadline) if now < at < inf]
        if later:
            self.start_timer(min(later))

    def fail_late(self, waiter: asyncio.Future[Any] | None, kind: str) -> None:
        if waiter is not None and not waiter.done():
            waiter.set_exception(self.endpoint.limits.late(
                'connect' if self.state is CONNECTING else kind))

    # Closing

    def close(self, why: str) -> None:
        """Close, and leave nothing in the loop. `why` is for those who watch."""
        if self.state is CLOSED:
            return
        state, books = self.state, self.place.books
        books.opened.discard(self)
        if state is IDLE:
            books.remove_idle(self)
        has_loop = not self.loop.is_closed()
        if has_loop:
            # Before the socket: its number may be that of another one at once.
            if self.is_reading:
                self.stop_reading()
            if self.is_writing:
                self.stop_writing()
            if self.timer is not None:
                self.timer.cancel()
            for waiter in self.reader, self.writer:
                if waiter is not None and state is OPEN and not waiter.done():
                    waiter.set_exception(ConnectionAbortedError('closed meanwhile'))
                    # This marks it as retrieved, in case nobody waits any more.
                    waiter.exception()
        self.state = CLOSED
        self.is_reading = self.is_writing = False
        self.timer = self.reader = self.writer = None
        if isinstance(self.sock, ssl.SSLSocket):
            # RFC 8446 6.1: say goodbye, without waiting for an answer.
            try:
                self.sock.unwrap()
            except (ssl.SSLError, ValueError):
                pass
            except OSError:
                forget_tls_error()
        close_socket(self.sock)
        if state is not CONNECTING and has_loop:
            self.place.return_place()

    def leave_to_parent(self) -> None:
        """Close only what belongs to this process: see `Books`."""
        self.state = CLOSED
        self.is_reading = self.is_writing = False
        close_socket(self.sock)

    def close_but_keep_place(self) -> OriginBooks:
        """Close it, and return its place, for another connection."""
        self.state = CONNECTING
        self.close('it can not be used again')
        return self.place

    def give_away(self) -> socket.socket:
        """The socket, which belongs to the caller from now on. Nobody waits for it."""
        assert self.timer is None, 'it has not waited for its peer'
        self.state = CLOSED
        self.place.books.opened.discard(self)
        self.place.return_place()
        return self.sock

    def close_from_anywhere(self, sending: RequestBody | None) -> None:
        """Close, as a finalizer has to: in any thread, whether or not the loop runs."""
        if self.state is CLOSED and sending is None:
            return
        if runs_here(self.loop) or not self.loop.is_running():
            self.drop(sending)
        else:
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self.drop, sending)

    def drop(self, sending: RequestBody | None) -> None:
        self.close('the exchange failed, or was dropped')
        if sending is not None:
            sending.abandon()


# -------------------------------------------------------------------------------- watching
#
# Tells `on_event` of a pool what happens. The parts above know nothing of it. Where something
# happens that is an event, a watched pool has a subclass that tells it, so other pools do no work
# for it.
#
# A `Trail` follows one request. It is told of by its acquisition, and then by its exchange. The
# trail makes sure that a request has one end, which is that of its response or of `request`.

class Watch:
    """Who watches a pool, and the numbers of its requests and connections."""

    __slots__ = ('on_event', 'requests', 'connections', 'loop', 'trail')

    def __init__(self, on_event: Callable[[Event], object]) -> None:
        if not callable(on_event):
            raise TypeError('on_event must be a function of an event, got '
                            f'{type(on_event).__name__}')
        self.on_event = on_event
        self.requests = itertools.count(1)
        self.connections = itertools.count(1)
        # Once there has been a request.
        self.loop: Loop
        # Of the request that is about to begin.
        self.trail: Trail

    def __repr__(self) -> str:
        return f'<Watch by {self.on_event!r}>'

    def watched(self, request: Request) -> Request:
        """Return a function that also tells what `request` raises."""
        @wraps(request)
        async def watched_request(*args: Any, **kwargs: Any) -> Response:
            # There is no turn of the loop before the acquisition takes it.
            self.trail = trail = Trail(self)
            try:
                return await request(*args, **kwargs)
            except BaseException as error:
                trail.end(RequestFailed, error)
                raise

        return watched_request

    def tell(self, event: Event) -> None:
        try:
            self.on_event(event)
        # A result that it asks for may have been cancelled, which is not what the request was.
        except (Exception, CancelledError) as error:
            self.loop.call_exception_handler({
                'message': f'on_event of a pool has raised at {type(event).__name__}',
                'exception': error})


class Trail:
    """What is told of one request."""

    __slots__ = ('watch', 'number', 'is_over')

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        # 0 until it has started. One that is refused has no events.
        self.number = 0
        self.is_over = False

    def __repr__(self) -> str:
        return f'<Trail of request {self.number}>'

    def start(self, loop: Loop, method: bytes, origin: Origin, head: bytes) -> None:
        self.watch.loop = loop
        self.number = next(self.watch.requests)
        self.tell(RequestStarted, method, origin.name, head.split(b' ', 2)[1])

    def tell(self, kind: Callable[..., Event], *facts: Any) -> None:
        if not self.is_over:
            self.watch.tell(kind(monotonic(), self.number, *facts))

    def end(self, kind: Callable[..., Event], *facts: Any) -> None:
        if self.number:
            self.tell(kind, *facts)
            # What goes on in the caller's code after that is not told.
            self.is_over = True


class WatchedConnector(Connector):
    __slots__ = ('watch',)

    def __init__(self, watch: Watch, *parts: Any) -> None:
        super().__init__(*parts)
        self.watch = watch
        self.acquisition_type = WatchedAcquisition
        self.connection_type = WatchedConnection

    def take_idle(self, origin: Origin, now: float) -> None:
        """Leave that to the acquisition, because it tells of the request."""


class WatchedAcquisition(Acquisition):
    __slots__ = ('trail',)

    connector: WatchedConnector

    async def run(self) -> Connection:
        self.trail = self.connector.watch.trail
        self.trail.start(self.loop, self.method, self.origin, self.head)
        connection = await super().run()
        assert isinstance(connection, WatchedConnection)
        connection.trail = self.trail
        self.trail.tell(ConnectionTaken, connection.number, connection.requests + 1,
                        connection.endpoint.facts)
        return connection

    async def await_place(self, why: str) -> OriginBooks | Connection:
        started = monotonic()
        try:
            given = await super().await_place(why)
        except BaseException as error:
            self.trail.tell(PlaceAwaited, started, error)
            raise
        self.trail.tell(PlaceAwaited, started, None)
        return given

    async def look_up(self, now: float) -> Peers:
        started = monotonic()
        try:
            peers = await super().look_up(now)
        except BaseException as error:
            self.trail.tell(NameResolved, started, self.origin.host, (), error)
            raise
        self.trail.tell(NameResolved, started, self.origin.host, tuple(peers.addresses), None)
        return peers

    async def answer(self, kind: int) -> list[Address]:
        """The lookup of further addresses while connecting."""
        started = monotonic()
        try:
            addresses = await super().answer(kind)
        except BaseException as error:
            self.trail.tell(NameResolved, started, self.origin.host, (), error)
            raise
        self.trail.tell(NameResolved, started, self.origin.host, tuple(map(str, addresses)), None)
        return addresses

    async def connect_elsewhere(self) -> Connection:
        started = monotonic()
        try:
            connection = await super().connect_elsewhere()
        except BaseException as error:
            self.trail.tell(ConnectionAttempted, started, '', None, error)
            raise
        assert isinstance(connection, WatchedConnection)
        connection.started = started
        connection.note_made()
        return connection

    def open_socket(self, address: Address) -> Connection:
        started = monotonic()
        try:
            return super().open_socket(address)
        except Exception as error:
            where = shown_address(str(address), self.origin.port)
            self.trail.tell(ConnectionAttempted, started, where, None, error)
            raise

    def made(self, sock: socket.socket, peer: str, where: str) -> Connection:
        connection = super().made(sock, peer, where)
        assert isinstance(connection, WatchedConnection)
        connection.trail = self.trail
        connection.where = where
        return connection

    async def secure(self, connection: Connection) -> None:
        assert isinstance(connection, WatchedConnection)
        started = monotonic()
        try:
            await super().secure(connection)
        except BaseException as error:
            self.trail.tell(TlsNegotiated, started, connection.number, None, None, False, error)
            raise
        sock = connection.sock
        assert isinstance(sock, ssl.SSLSocket)
        cipher = sock.cipher()
        self.trail.tell(TlsNegotiated, started, connection.number, sock.version(),
                        cipher and cipher[0], bool(sock.session_reused), None)


class WatchedExchange(Exchange):
    __slots__ = ('trail', 'sent_size', 'head_size', 'received', 'failure', 'is_cut')

    def __init__(self, connection: WatchedConnection, *request: Any) -> None:
        super().__init__(connection, *request)
        self.trail = connection.trail
        # Bytes of the request that were sent, of its head, and of content that were received.
        self.sent_size = self.head_size = 0
        self.received = 0
        # The last error that was made, and whether the connection has closed before the end of
        # the response. Either can come first, and then the response has ended.
        self.failure: HttpError | None = None
        self.is_cut = False

    @property
    def is_returned(self) -> bool:
        """`request` has returned the response, so what fails is the reading of it."""
        return not hasattr(self, 'books')

    def note_sent(self, data: Buffer, count: int) -> None:
        if not self.head_size:
            self.head_size = bytes(data).index(b'\r\n\r\n') + 4
        is_head = self.sent_size < self.head_size
        self.sent_size += count
        if is_head and self.sent_size >= self.head_size:
            self.trail.tell(HeadSent, self.head_size)

    def feed(self, data: bytes) -> bytes:
        if data and not self.has_started:
            self.trail.tell(ResponseStarted)
        had_head = self.decoder is not None
        content = super().feed(data)
        if not had_head and self.decoder is not None:
            head = self.head
            self.received = len(self.content)
            self.trail.tell(HeadReceived, head.code, b'HTTP/1.' + head.minor, head.fields,
                            len(head.data))
        self.received += len(content)
        return content

    def why_last(self) -> str:
        """Why the connection is not used again, although the response has ended."""
        settings = self.endpoint.settings
        return ('connection: close in the request' if self.declared.close else
                'the request was not sent whole' if not self.request_sent else
                'keep_alive_timeout is 0' if not settings.keep_alive_timeout else
                'the response is the last of its connection' if self.head.keep_alive <= 0 else
                'max_requests_per_connection' if self.number >= settings.max_requests else
                'more has come than the response')

    def error(self, cause: BaseException, doing: Doing | None = None) -> HttpError:
        error = super().error(cause, doing)
        if self.is_returned:
            error.__cause__ = cause
            self.failure = error
            if self.is_cut:
                self.end()
        return error

    def note_drop(self) -> None:
        if self.is_returned:
            self.error(ConnectionAbortedError('the response body was dropped before its end'),
                       READING)

    def cut(self) -> None:
        self.is_cut = True
        if self.failure is not None:
            self.end()

    def end(self) -> None:
        # It has the frames of the reader in its traceback, so that is a cycle.
        failure, self.failure = self.failure, None
        self.trail.end(BodyEnded, self.received, failure)


class WatchedRequestBody(RequestBody):
    __slots__ = ()

    async def send_all(self) -> None:
        await super().send_all()
        exchange = self.exchange
        assert isinstance(exchange, WatchedExchange)
        if not self.is_stopped:
            exchange.trail.tell(BodySent, exchange.sent_size - exchange.head_size)


class WatchedConnection(Connection):
    __slots__ = ('trail', 'where', 'started', 'opened', 'number', 'is_attempted', 'reason')

    exchange: WatchedExchange
    exchange_type: type[Exchange] = WatchedExchange
    body_type = WatchedRequestBody

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        # Of the request that opens it, or uses it.
        self.trail: Trail
        # The address and port of the peer.
        self.where: str
        self.started = monotonic()
        # When it was made, and its number. 0 if it was not made.
        self.opened: float
        self.number = 0
        # The end of the attempt to connect has been told.
        self.is_attempted = False
        # Why it closes, where that is known before.
        self.reason = ''

    def start_connecting(self, address: tuple[Any, ...]) -> bool:
        try:
            is_made = super().start_connecting(address)
        except Exception as error:
            self.note_attempt(error)
            raise
        if is_made:
            self.note_made()
        return is_made

    def check_connected(self) -> None:
        try:
            super().check_connected()
        except OSError as error:
            self.note_attempt(error)
            raise
        self.note_made()

    def note_made(self) -> None:
        self.opened = monotonic()
        self.number = next(self.trail.watch.connections)
        self.note_attempt(None)

    def note_attempt(self, error: Exception | None) -> None:
        self.is_attempted = True
        self.trail.tell(ConnectionAttempted, self.started, self.where, self.number or None, error)

    def send_at_once(self, data: Buffer) -> int:
        count = super().send_at_once(data)
        self.exchange.note_sent(data, count)
        return count

    def is_reusable(self, peers: Peers | None, now: float) -> bool:
        if super().is_reusable(peers, now):
            return True
        self.reason = HAS_EXPIRED if now >= self.deadline else \
            PEER_HAS_CLOSED if not self.is_quiet() else \
            'its address is no longer one of the host'
        return False

    def release(self) -> None:
        exchange = self.exchange
        exchange.trail.end(BodyEnded, exchange.received, None)
        if not exchange.may_reuse():
            self.reason = exchange.why_last()
        super().release()
        if self.state is not CLOSED:
            self.tell(ConnectionReleased)

    def drop(self, sending: RequestBody | None) -> None:
        if self.state is OPEN:
            self.exchange.note_drop()
        super().drop(sending)

    def close(self, why: str) -> None:
        if self.state is CLOSED:
            return
        super().close(why)
        if hasattr(self, 'exchange'):
            if self.loop.is_closed():
                # No one will read the response any more.
                self.exchange.note_drop()
            self.exchange.cut()
        if not self.is_attempted:
            self.note_attempt(None)
        elif self.number:
            self.tell(ConnectionClosed, self.opened, self.requests, self.reason or why)

    def tell(self, kind: Callable[..., Event], *facts: Any) -> None:
        self.trail.watch.tell(kind(monotonic(), self.number, self.endpoint.origin.name, *facts))


# ----------------------------------------------------------------------- what errors show
#
# Formats what an error shows of its request, of bytes that came, and of its cause.

def shown_method(method: bytes) -> str:
    if not isinstance(method, bytes):
        return f'({type(method).__name__})'
    return method.decode() if TOKEN.fullmatch(method[:MAX_SHOWN]) else shown(method)


def shown(data: bytes) -> str:
    """Format bytes for an error, cut short."""
    return repr(bytes(data[:MAX_SHOWN])) + ('...' if len(data) > MAX_SHOWN else '')


def reason(cause: BaseException) -> str:
    text = str(cause)
    if isinstance(cause, OSError) and cause.errno in (EMFILE, ENFILE):
        text += ' (max_connections bounds the descriptors of a pool)'
    return text if isinstance(cause, (ValueError, EOFError)) and text else \
        f'{type(cause).__name__}: {text}' if text else type(cause).__name__
