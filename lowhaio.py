"""A lightweight, streaming-first asyncio HTTP/1.1 client that creates no tasks.

::

    request, close = Pool()
    code, headers, body = await request(b'GET', 'https://example.com/')
    async for chunk in body:
        ...

One exchange, and this module, from top to bottom:

    request(method, url, params, headers, body)
      |  names              the host's addresses, while their records are fresh
      |  idle connections   the last one released that may still be reused, or else
      |  connecting         a socket, TCP, TLS
      |  request head       what the caller gave, checked and turned into bytes
      |  sending            the head with the first chunk, then the other chunks
      |  response head      status line and fields; interim responses are skipped
      |  framing            where the body ends, and if the connection persists
      |  response body      decoded as it is read; at its last byte the connection
      v                     becomes idle, or closes
    (code, headers, body)

Everything runs in the task of the caller. What has to happen without a caller, such as the
expiry of an idle connection, is a callback of the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import select
import socket
import ssl
import sys
import types
from asyncio import CancelledError
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from math import inf
from os import strerror
from typing import Any, Protocol
from urllib.parse import urlencode

from aiodnsresolver import TYPES, DnsTimeout, Resolver, ResolverLoggerAdapter

# ---------------------------------------------------------------------------------- limits

# Interim (1xx) responses before the final one. Each may be as long as any head.
MAX_INTERIM_RESPONSES = 100

# Framing of a chunked body, in bytes: what sane servers never reach, and a server that sends
# one byte of data for each kilobyte of chunk extension does. One-byte chunks cost 5 for 1.
MAX_FRAMING_OVERHEAD = 64 * 1024
MAX_FRAMING_OVERHEAD_RATIO = 16

# Bytes moved without a turn of the loop for anybody else. Longer starves other tasks (this
# is some 0.1 ms of copying), shorter costs throughput.
MAX_BURST = 256 * 1024

# How much of a first chunk is copied to leave in one send with the head.
MAX_JOINED_CHUNK = 64 * 1024

# Host names whose addresses are remembered by one pool.
MAX_NAMES = 1024

# Lines of response heads that are remembered with what they say.
MAX_FIELD_LINES = 512

# Longer times are taken for mistakes: some thirty years.
MAX_SECONDS = 1e9

# How much of what came is shown in an error, in bytes.
MAX_SHOWN = 60

Fields = tuple[tuple[bytes, bytes], ...]
Address = IPv4Address | IPv6Address
Loop = asyncio.AbstractEventLoop
Adapter = logging.LoggerAdapter[Any]
GetAdapter = Callable[[dict[str, Any]], Adapter]
GetResolverAdapter = Callable[[dict[str, Any]], GetAdapter]


# ---------------------------------------------------------------------------------- errors
#
# A failure is one of these, with the lower-level exception as its cause, or a cancellation.
# Which of the two branches it is on tells if the request may have reached the server.

class HttpError(Exception):
    """A request or its response failed. The lower-level exception, if any, is `__cause__`."""

    reused = False
    """The connection had served a request before: the peer may just have hung up."""

    response_started = False
    """A byte of the response, interim responses included, had arrived."""


class HttpConnectionError(HttpError):
    """Not one byte of the request was handed to the kernel: it is always safe to retry."""


class HttpDnsError(HttpConnectionError):
    """The host name could not be resolved to an address."""


class HttpTlsError(HttpConnectionError):
    """The TLS handshake failed, or the peer's certificate was not accepted."""


class HttpDataError(HttpError):
    """At least one byte of the request may have been handed to the kernel."""


class HttpConnectionClosedError(HttpDataError):
    """The peer closed the connection before the end of the response."""


class HttpHeaderTooLong(HttpDataError):
    """A response head, a trailer section or a chunk-size line exceeds `max_header_length`."""


# -------------------------------------------------------------------------- public helpers

class HttpLoggerAdapter(logging.LoggerAdapter):  # type: ignore[type-arg]
    """Prefixes messages with `[http]`, or with the values of `extra`: `[http:GET,URL]`.

    Above DEBUG, a query string is left out of the URL: it often holds credentials.
    """

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        if self.isEnabledFor(level):
            prefix = self.prefix(level)
            # A message without arguments is not formatted, so its % is not escaped either.
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


def get_resolver_logger_adapter_default(extra: dict[str, Any]) -> GetAdapter:
    http_adapter = HttpLoggerAdapter(logging.getLogger('aiodnsresolver'), extra)

    def get_logger_adapter(resolver_extra: dict[str, Any]) -> Adapter:
        adapter: Adapter = ResolverLoggerAdapter(http_adapter, resolver_extra)
        return adapter

    return get_logger_adapter


def streamed(data: bytes) -> Callable[[], AsyncIterator[bytes]]:
    """A `body` function for a request that sends `data`, which is held in memory."""
    async def body() -> AsyncIterator[bytes]:
        if data:
            yield data

    return body


empty_async_iterator = streamed(b'')


async def buffered(body: AsyncIterator[bytes]) -> bytes:
    """All of a response body, in memory. Its length is not limited."""
    if isinstance(body, ResponseBody):
        # Most small bodies came whole with their heads: two steps of an iterator saved.
        whole = body._take_whole()
        if whole is not None:
            return whole
    return b''.join([chunk async for chunk in body])


@contextlib.contextmanager
def timeout(loop: Loop, seconds: float) -> Iterator[Callable[[], None]]:
    """Raise `asyncio.TimeoutError` from the block once it has run for `seconds`.

    Yields a function that starts the time anew. Like `asyncio.timeout`, it interrupts by
    cancelling the current task and takes that back; a cancellation from outside wins.
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


# ------------------------------------------------------------------------------------ Pool
#
# Wires the parts below together, and holds no protocol code.

class Request(Protocol):
    def __call__(
            self, method: bytes, url: str,
            params: Params = ..., headers: Iterable[tuple[bytes, bytes]] = ...,
            body: Callable[..., AsyncIterator[bytes]] = ...,
            body_args: Iterable[Any] = ...,
            body_kwargs: Mapping[str, Any] | Iterable[tuple[str, Any]] = ...,
            get_logger_adapter: GetAdapter = ...,
            get_resolver_logger_adapter: GetResolverAdapter = ...,
    ) -> Awaitable[Response]:
        """See `Pool`."""


class Close(Protocol):
    def __call__(
            self, get_logger_adapter: GetAdapter = ...,
            get_resolver_logger_adapter: GetResolverAdapter = ...,
    ) -> Awaitable[None]:
        """See `Pool`."""


def get_sock_default(family: int) -> socket.socket:
    """A non-blocking TCP socket that sends at once, and notices a peer that is gone."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # The seconds of silence before the first probe. macOS calls it TCP_KEEPALIVE.
    idle_option = getattr(socket, 'TCP_KEEPIDLE', getattr(socket, 'TCP_KEEPALIVE', None))
    if idle_option is not None:
        sock.setsockopt(socket.IPPROTO_TCP, idle_option, 60)
    return sock


def get_ssl_context_default() -> ssl.SSLContext:
    """Verifies certificates and names against the authorities that the system trusts."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(['http/1.1'])
    return context


def Pool(
        *,
        get_dns_resolver: Callable[..., Resolver] = Resolver,
        get_sock: Callable[[int], socket.socket] = get_sock_default,
        get_ssl_context: Callable[[], ssl.SSLContext] = get_ssl_context_default,
        http_version: bytes = b'HTTP/1.1',
        keep_alive_timeout: float = 15,
        recv_bufsize: int = 131072,
        max_header_length: int = 16384,
        socket_timeout: float = 10,
        get_logger_adapter: GetAdapter = get_logger_adapter_default,
        get_resolver_logger_adapter: GetResolverAdapter = get_resolver_logger_adapter_default,
) -> tuple[Request, Close]:
    """A pool of connections, as two coroutine functions, `request` and `close`.

    It may be made before an event loop runs: it binds to the loop of its first request.

    `request(method, url, params, headers, body, body_args, body_kwargs)` sends a request and
    returns `(code, headers, body)` when the head of its response has arrived.

    - `method`: bytes. `url`: str, `http` or `https`; its path and query are sent as given, but
      what may not stand there is percent-encoded. `params`: added to the URL's query, as for
      `urllib.parse.urlencode(params, doseq=True)`. `headers`: pairs of name and value, bytes,
      sent as given, after `host` unless that is among them.
    - `body`: called with `*body_args, **dict(body_kwargs)`, returns an async iterator of bytes.
      Its length must be told by a `content-length`, or it must be encoded already as
      `transfer-encoding: chunked` says. It is closed when it is not read to its end.
    - Returned are the status code, three digits as bytes; the fields, pairs of lower-case name
      and value, bytes, in their order; and a `ResponseBody`, an async iterator of bytes that is
      to be read to its end, closed, or dropped.
    - Raises an `HttpConnectionError` when not one byte was sent, bad arguments included, an
      `HttpDataError` otherwise, and `asyncio.CancelledError`.

    `close()` closes the idle connections at once, and those in use when their responses end.

    Options, all keywords; times are in seconds, sizes in bytes:

    - `get_dns_resolver(get_logger_adapter=…)` returns `(resolve, clear_cache)`, as
      `aiodnsresolver.Resolver` does. Called at the first host name that is no IP address.
    - `get_sock(family)` returns a non-blocking stream socket.
    - `get_ssl_context()` returns an `ssl.SSLContext`. Called at the first https request.
    - `http_version`: `b'HTTP/1.1'` or `b'HTTP/1.0'`.
    - `keep_alive_timeout`: how long a connection may idle before it is closed. A second less
      than the server's own time-out, if it tells one. 0: no connection is used again.
    - `recv_bufsize`: asked for by one read, so the size of a response body's longest chunk.
    - `max_header_length`: of a response head, of a trailer section, of a chunk-size line.
    - `socket_timeout`: for the lookup; for connecting with the TLS handshake; for each progress
      of sending; for the whole head of a response; for each read of its body.
    - `get_logger_adapter(extra)` returns a logger adapter for one request, or for the pool;
      `get_resolver_logger_adapter(extra)` returns such a function for the resolver.
    """
    settings = Settings(
        http_version, keep_alive_timeout, recv_bufsize, max_header_length, socket_timeout)
    idle = IdleConnections()
    names = Names(get_dns_resolver, socket_timeout)
    opener = Opener(get_sock, get_ssl_context, settings, idle)
    default_get_adapter, default_get_resolver_adapter = (
        get_logger_adapter, get_resolver_logger_adapter)
    bound_loop: Loop | None = None

    def bind(loop: Loop) -> None:
        nonlocal bound_loop
        check_loop(loop, bound_loop)
        bound_loop = loop

    async def request(
            method: bytes, url: str,
            params: Params = (), headers: Iterable[tuple[bytes, bytes]] = (),
            body: Callable[..., AsyncIterator[bytes]] = empty_async_iterator,
            body_args: Iterable[Any] = (),
            body_kwargs: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
            get_logger_adapter: GetAdapter = default_get_adapter,
            get_resolver_logger_adapter: GetResolverAdapter = default_get_resolver_adapter,
    ) -> Response:
        loop = asyncio.get_running_loop()
        try:
            if loop is not bound_loop:
                bind(loop)
            if idle.is_closed:
                raise RuntimeError('the pool is closed')
            origin, head, declared = build_head(method, url, params, headers, http_version)
        except Exception as cause:
            raise refusal(method, url, cause) from cause

        # Most often nobody listens, and then not even the adapter is made.
        logger = None
        if get_logger_adapter is not get_logger_adapter_default or LOGGER.isEnabledFor(INFO):
            logger = get_logger_adapter(logger_extra(method, url))

        now = loop.time()
        deadline = now + socket_timeout
        peers = origin.peers or names.fresh(origin.host, now)
        if peers is None:
            get_adapter = get_resolver_logger_adapter(logger_extra(method, url))
            peers = await names.lookup(method, origin, get_adapter)
            now = loop.time()
        connection = idle.take(origin, peers, now)
        if connection is None:
            connection = await opener.open(loop, method, origin, peers, deadline)
        response = await exchange(
            connection, method, head, declared, body, body_args, body_kwargs)
        if logger is not None:
            logger.info('Received %s from %s', response[0].decode(), connection.describe())
            logger.debug('That was request %s of its connection', connection.requests)
        return response

    async def close(
            get_logger_adapter: GetAdapter = default_get_adapter,
            get_resolver_logger_adapter: GetResolverAdapter = default_get_resolver_adapter,
    ) -> None:
        get_logger_adapter({}).debug('Closing the pool')
        idle.close()
        await names.clear(get_resolver_logger_adapter({}))

    return request, close


class Settings:
    """The options that connections go by. Times are in seconds, sizes in bytes."""

    __slots__ = ('keep_alive_timeout', 'recv_bufsize', 'max_header_length', 'socket_timeout')

    def __init__(self, http_version: bytes, keep_alive_timeout: float, recv_bufsize: int,
                 max_header_length: int, socket_timeout: float) -> None:
        if http_version not in (b'HTTP/1.1', b'HTTP/1.0'):
            raise ValueError(
                f"http_version must be b'HTTP/1.1' or b'HTTP/1.0', got {http_version!r}")
        self.keep_alive_timeout = checked_number('keep_alive_timeout', keep_alive_timeout, 0)
        self.recv_bufsize = checked_count('recv_bufsize', recv_bufsize)
        self.max_header_length = checked_count('max_header_length', max_header_length)
        self.socket_timeout = checked_number('socket_timeout', socket_timeout, 1e-9)


def checked_number(name: str, value: float, minimum: float) -> float:
    if not isinstance(value, (int, float)) or not minimum <= value <= MAX_SECONDS:
        raise ValueError(f'{name} must be a number of seconds, got {value!r}')
    return value


def checked_count(name: str, value: int) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f'{name} must be a number of bytes, 1 or more, got {value!r}')
    return value


def check_loop(loop: Loop, bound_loop: Loop | None) -> None:
    if bound_loop is not None:
        raise RuntimeError('the pool is bound to the event loop of its first request and can '
                           'not be used from another: make one Pool for each loop')
    if getattr(type(loop), 'add_reader', Loop.add_reader) is Loop.add_reader:
        raise RuntimeError('the event loop must have add_reader, as asyncio\'s selector loop '
                           f'and uvloop do: {type(loop).__name__} does not')


def logger_extra(method: bytes, url: str) -> dict[str, Any]:
    return {'lowhaio_method': method.decode(), 'lowhaio_url': url}


def refusal(method: bytes, url: str, cause: Exception) -> HttpConnectionError:
    """Why nothing was sent. The URL may hold secrets, so only its origin is shown."""
    try:
        where = f' {parse_url(url)[0].name}'
    except (TypeError, ValueError):
        where = ''
    return HttpConnectionError(f'{shown_method(method)}{where}, refused: {cause}')


def shown_method(method: bytes) -> str:
    if not isinstance(method, bytes):
        return f'({type(method).__name__})'
    return method.decode() if TOKEN.fullmatch(method[:MAX_SHOWN]) else shown(method)


def shown(data: bytes) -> str:
    """What came, as it is shown in errors: cut short."""
    return repr(bytes(data[:MAX_SHOWN])) + ('...' if len(data) > MAX_SHOWN else '')


def reason(cause: BaseException) -> str:
    text = str(cause)
    return text if isinstance(cause, (ValueError, EOFError)) and text else \
        f'{type(cause).__name__}: {text}' if text else type(cause).__name__


# ---------------------------------------------------------------------------- one exchange
#
# Owns its connection until the response body does. The one place where what went wrong, with
# the connection or with what came over it, becomes an HttpError.

async def exchange(
        connection: Connection, method: bytes, head: bytes, declared: Declared,
        body: Callable[..., AsyncIterator[bytes]], body_args: Iterable[Any],
        body_kwargs: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> Response:
    connection.method = method
    connection.requests += 1
    connection.has_sent = connection.has_started = False
    try:
        if body is empty_async_iterator and not declared.has_body:
            await connection.send(head)
        else:
            await send_with_body(
                connection, head,
                RequestBody(connection, body, body_args, body_kwargs, declared))
        connection.phase = 'reading the response head'
        code, minor, fields, data = await read_head(connection)
        if code == b'101' and not declared.upgrade:
            raise ValueError('got 101 Switching Protocols, but the request had no upgrade')
        connection.phase = 'reading the response body'
        decoder, keep_alive = frame(method, code, minor, fields, connection.settings)
        connection.keep_alive = 0 if declared.close else keep_alive
        return code, fields, ResponseBody(connection, decoder, data)
    except BaseException as cause:
        connection.close()
        if not isinstance(cause, Exception):
            raise
        raise exchange_error(connection, cause) from cause


def exchange_error(connection: Connection, cause: BaseException) -> HttpError:
    kind = HttpConnectionError if not connection.has_sent else \
        HttpDataError if connection.phase == REQUEST_BODY else \
        HttpHeaderTooLong if isinstance(cause, TooLong) else \
        HttpConnectionClosedError if isinstance(cause, CLOSED) else HttpDataError
    error = kind(f'{shown_method(connection.method)} {connection.describe()}, '
                 f'{connection.phase}: {reason(cause)}')
    error.reused = connection.requests > 1
    error.response_started = connection.has_started
    return error


# The peer's end of a connection, by any of its names.
CLOSED = (EOFError, BrokenPipeError, ConnectionResetError, ssl.SSLEOFError,
          ssl.SSLZeroReturnError)


# ----------------------------------------------------------------------------------- names
#
# Host name -> addresses. They are remembered as long as their records are fresh; addresses
# without `expires_at`, as a resolver of the caller's may return, are asked for each time.

class Peers:
    """The current addresses of a host."""

    __slots__ = ('addresses', 'texts', 'expires_at', 'turn')

    def __init__(self, addresses: Iterable[Address], expires_at: float, turn: int) -> None:
        self.addresses = tuple(addresses)
        self.texts = frozenset(map(str, self.addresses))
        self.expires_at = expires_at
        self.turn = turn

    def in_turn(self) -> tuple[Address, ...]:
        """All addresses, beginning one later each time, so that all get their share."""
        first = self.turn % len(self.addresses)
        self.turn += 1
        return self.addresses[first:] + self.addresses[:first]


class Names:
    __slots__ = ('get_dns_resolver', 'socket_timeout', 'resolver', 'known')

    def __init__(self, get_dns_resolver: Callable[..., Resolver], socket_timeout: float) -> None:
        self.get_dns_resolver = get_dns_resolver
        self.socket_timeout = socket_timeout
        self.resolver: tuple[Callable[..., Any], Callable[..., Any]] | None = None
        self.known: dict[str, Peers] = {}

    def fresh(self, host: str, now: float) -> Peers | None:
        peers = self.known.get(host)
        return peers if peers is not None and now < peers.expires_at else None

    async def lookup(self, method: bytes, origin: Origin,
                     get_logger_adapter: GetAdapter) -> Peers:
        try:
            if self.resolver is None:
                self.resolver = self.get_dns_resolver(get_logger_adapter=get_logger_adapter)
            lookup = self.resolver[0](
                origin.host, TYPES.A, get_logger_adapter=get_logger_adapter)
            task = asyncio.current_task()
            assert task is not None
            addresses = await Lookup(lookup, task, self.socket_timeout)
            return self.remember(origin.host, addresses)
        except DnsTimeout as cause:
            error = TimeoutError('no nameserver answered in the time that the resolver gives')
            error.__cause__ = cause
            raise dns_error(method, origin, error) from error
        except Exception as cause:
            raise dns_error(method, origin, cause) from cause

    def remember(self, host: str, addresses: Iterable[Address]) -> Peers:
        # Sorted, so that a resolver that rotates its answers does not undo our rotation.
        in_order = sorted(addresses, key=lambda address: (address.version, int(address)))
        if not in_order:
            raise LookupError('the resolver returned no address')
        expires_at = min(getattr(address, 'expires_at', 0) for address in in_order)
        before = self.known.pop(host, None)
        if len(self.known) >= MAX_NAMES:
            del self.known[next(iter(self.known))]
        peers = Peers(in_order, expires_at, before.turn if before is not None else 0)
        self.known[host] = peers
        return peers

    async def clear(self, get_logger_adapter: GetAdapter) -> None:
        self.known.clear()
        if self.resolver is not None:
            await self.resolver[1](get_logger_adapter=get_logger_adapter)


def timed_out(socket_timeout: float) -> TimeoutError:
    return TimeoutError(f'socket_timeout, {socket_timeout:g} seconds, passed')


def dns_error(method: bytes, origin: Origin, cause: Exception) -> HttpDnsError:
    return HttpDnsError(
        f'{shown_method(method)} {origin.name}: resolving {origin.host} failed: {reason(cause)}')


class Lookup:
    """Awaits the resolver for a time, and takes back the cancellations that it makes.

    For its own timeouts the resolver cancels the current task, and goes on with the next
    nameserver. So what it goes on after was its own cancellation, and is taken back in the end.
    If more than one came at once, one is from outside, and must win. When the time is up only
    the future that the resolver waits for is cancelled, never the task.
    """

    __slots__ = ('steps', 'socket_timeout', 'task', 'seen', 'own', 'fresh', 'is_late',
                 'must_stop', 'waited_for', 'thrown')

    def __init__(self, lookup: Awaitable[Any], task: asyncio.Task[Any],
                 socket_timeout: float) -> None:
        self.steps: Any = lookup.__await__()
        self.socket_timeout = socket_timeout
        self.task = task
        # How often the task was cancelled as far as we know; by the resolver; and together with
        # what is thrown at the next step.
        self.seen = task.cancelling()
        self.own = self.fresh = 0
        self.is_late = self.must_stop = False
        self.waited_for: Any = None
        self.thrown: BaseException | None = None

    def __await__(self) -> Generator[Any, None, Any]:
        timer = self.task.get_loop().call_later(self.socket_timeout, self.expire)
        try:
            while True:
                self.step()
                try:
                    yield self.waited_for
                    self.thrown = None
                except GeneratorExit:
                    abandon(self.steps, self.waited_for)
                    raise
                except BaseException as error:
                    self.thrown = error
                    self.fresh = self.task.cancelling() - self.seen
        except StopIteration as stop:
            return stop.value
        finally:
            timer.cancel()
            for _ in range(self.own):
                self.task.uncancel()

    def expire(self) -> None:
        self.is_late = self.must_stop = True
        cancel_future(self.waited_for)

    def step(self) -> None:
        """One step, and a second one if it has to end."""
        self.step_once()
        if self.must_stop or self.fresh:
            self.must_stop = False
            cancel_future(self.waited_for)
            self.thrown = CancelledError()
            self.step_once()

    def step_once(self) -> None:
        # The resolver leaves async generators unfinished. The loop's hooks would close them in
        # tasks; without them they are closed when they are collected.
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(None, None)
        try:
            self.waited_for = (
                self.steps.send(None) if self.thrown is None else self.steps.throw(self.thrown))
        except CancelledError:
            if self.is_late and not self.fresh:
                raise timed_out(self.socket_timeout) from None
            # It only cleaned up before, so what it went on after was from outside.
            self.own -= not self.fresh and self.own > 0
            raise
        except BaseException:
            if self.settle():
                raise CancelledError from None
            raise
        finally:
            sys.set_asyncgen_hooks(*hooks)
        self.settle()

    def settle(self) -> int:
        """Of the cancellations that a step went on after, how many were from outside?"""
        not_undone = min(self.fresh, self.task.cancelling() - self.seen)
        self.seen = self.task.cancelling()
        self.own += not_undone > 0
        self.fresh = max(not_undone - 1, 0)
        return self.fresh


# ------------------------------------------------------- stepping what the caller gave us
#
# An awaitable is stepped, rather than awaited, where what it does at once differs from what it
# does later, or where its cancellations have to be told apart.

@types.coroutine
def remaining_steps(
        steps: Generator[Any, None, Any], waited_for: Any) -> Generator[Any, None, Any]:
    """Await the rest of an awaitable that has been stepped until it waited."""
    try:
        while True:
            try:
                yield waited_for
            except GeneratorExit:
                abandon(steps, waited_for)
                raise
            except BaseException as error:
                waited_for = steps.throw(error)
            else:
                waited_for = steps.send(None)
    except StopIteration as stop:
        return stop.value


@types.coroutine
def cancelled_steps(
        steps: Generator[Any, None, Any], waited_for: Any) -> Generator[Any, None, Any]:
    """Cancel what has been stepped until it waited, as its task would, and await the rest."""
    cancel_future(waited_for)
    try:
        waited_for = steps.throw(CancelledError())
    except StopIteration as stop:
        return stop.value
    return (yield from remaining_steps(steps, waited_for))


def cancel_future(future: Any) -> None:
    """As a task that is cancelled does to the future it waits for: None is a bare yield."""
    if future is not None:
        future.cancel()


def abandon(steps: Generator[Any, None, Any], waited_for: Any) -> None:
    """Cancel an awaitable that was stepped until it waited, when nothing may be awaited."""
    cancel_future(waited_for)
    with contextlib.suppress(CancelledError, Exception):
        steps.throw(CancelledError())


# ------------------------------------------------------------------------ idle connections
#
# By origin; within an origin the last one released is the first one reused, so that those
# not needed expire. Owns the connections in it: whatever ends one here closes it.

class IdleConnections:
    __slots__ = ('by_origin', 'opened', 'is_closed')

    def __init__(self) -> None:
        self.by_origin: dict[str, dict[Connection, None]] = {}
        # All connections, in use too: a body in a cycle of garbage must find its own alive.
        self.opened: set[Connection] = set()
        self.is_closed = False

    def take(self, origin: Origin, peers: Peers, now: float) -> Connection | None:
        """A connection to a current address that has seen nothing since its last response."""
        connections = self.by_origin.get(origin.name)
        while connections:
            connection, _ = connections.popitem()
            connection.is_idle = False
            if not connections:
                del self.by_origin[origin.name]
            if connection.peer in peers.texts and connection.is_reusable(now):
                return connection
            connection.close()
        return None

    def add(self, connection: Connection) -> bool:
        if self.is_closed:
            return False
        self.by_origin.setdefault(connection.origin.name, {})[connection] = None
        return True

    def remove(self, connection: Connection) -> None:
        connections = self.by_origin[connection.origin.name]
        del connections[connection]
        if not connections:
            del self.by_origin[connection.origin.name]

    def close(self) -> None:
        self.is_closed = True
        for connections in list(self.by_origin.values()):
            for connection in list(connections):
                connection.close()


# ------------------------------------------------------------------------------ connecting
#
# Owns a socket until its connection is usable, within one deadline for all of it.

class Opener:
    __slots__ = ('get_sock', 'get_ssl_context', 'ssl_context', 'settings', 'idle')

    def __init__(self, get_sock: Callable[[int], socket.socket],
                 get_ssl_context: Callable[[], ssl.SSLContext],
                 settings: Settings, idle: IdleConnections) -> None:
        self.get_sock = get_sock
        self.get_ssl_context = get_ssl_context
        self.ssl_context: ssl.SSLContext | None = None
        self.settings = settings
        self.idle = idle

    async def open(self, loop: Loop, method: bytes, origin: Origin, peers: Peers,
                   deadline: float) -> Connection:
        """A connection to the first address that accepts it, one after the other."""
        failures: list[tuple[Address, Exception]] = []
        for address in peers.in_turn():
            try:
                connection = await self.connect(loop, origin, address, deadline)
            except Exception as cause:
                failures.append((address, cause))
                if loop.time() >= deadline:
                    break
            else:
                return await self.secure(connection, method, deadline)
        raise connect_error(method, origin, failures) from connect_cause(failures)

    async def connect(
            self, loop: Loop, origin: Origin, address: Address, deadline: float) -> Connection:
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        sock = self.get_sock(family)
        connection = Connection(loop, sock, origin, str(address), self.settings, self.idle)
        try:
            await connection.connect(sockaddr(address, origin.port), deadline)
        except BaseException:
            connection.close()
            raise
        return connection

    async def secure(
            self, connection: Connection, method: bytes, deadline: float) -> Connection:
        """The connection, after the TLS handshake if its origin is https."""
        if not connection.origin.is_tls:
            return connection
        try:
            if self.ssl_context is None:
                self.ssl_context = self.get_ssl_context()
            await connection.start_tls(self.ssl_context, deadline)
        except BaseException as cause:
            connection.close()
            if not isinstance(cause, Exception):
                raise
            raise HttpTlsError(
                f'{shown_method(method)} {connection.describe()}: '
                f'the TLS handshake failed: {reason(cause)}') from cause
        return connection


def connect_error(method: bytes, origin: Origin,
                  failures: list[tuple[Address, Exception]]) -> HttpConnectionError:
    reasons = '; '.join(f'{address}: {reason(cause)}' for address, cause in failures)
    return HttpConnectionError(
        f'{shown_method(method)} {origin.name}: connecting failed: {reasons}')


def connect_cause(failures: list[tuple[Address, Exception]]) -> Exception:
    """The cause of the one failure, or of a time-out, or else all of them."""
    last = failures[-1][1]
    if len(failures) == 1 or isinstance(last, TimeoutError):
        return last
    return ExceptionGroup('no address accepted a connection', [cause for _, cause in failures])


def sockaddr(address: Address, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    if isinstance(address, IPv4Address):
        return str(address), port
    zone = address.scope_id
    scope = 0 if zone is None else int(zone) if zone.isdigit() else socket.if_nametoindex(zone)
    return str(address).partition('%')[0], port, 0, scope


# ---------------------------------------------------------------------------- request head
#
# What the caller gave is refused with a ValueError or TypeError that names the argument, or
# goes out as it is. Pure; never prints a path, a query or the value of a field.

Params = Mapping[Any, Any] | Iterable[tuple[Any, Any]]

TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 5.6.2
FIELD_VALUE = re.compile(rb'[^\x00-\x08\x0a-\x1f\x7f]*')  # RFC 9110 5.5, RFC 9112 2.2
USUAL_METHODS = frozenset((b'GET', b'HEAD', b'POST', b'PUT', b'DELETE', b'PATCH', b'OPTIONS'))

# RFC 3986 3. What a server sees begins with the path; the fragment is the client's own.
URL = re.compile(r'([A-Za-z][A-Za-z0-9+.\-]*)://([^/?#]*)([^#]*)')
AUTHORITY = re.compile(r'(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]*))?')
CONTROL = re.compile(r'[\x00-\x1f\x7f-\x9f]')
IPV4 = re.compile(r'[0-9]{1,3}(?:\.[0-9]{1,3}){3}')
HOST_NAME = re.compile(r'(?:[a-z0-9_-]{1,63}\.)*+(?!(?:[0-9]+|0x[0-9a-f]*)\Z)[a-z0-9_-]{1,63}')
ZONE = re.compile(r'[A-Za-z0-9._~-]+')

# RFC 3986 3.3, 3.4: pchar, "/" and "?". All else is percent-encoded, a stray "%" too.
TARGET = re.compile(
    r"[A-Za-z0-9\-._~!$&'()*+,;=:@/?]*+(?:%[0-9A-Fa-f]{2}[A-Za-z0-9\-._~!$&'()*+,;=:@/?]*+)*+")
NOT_IN_TARGET = re.compile(rb"%(?![0-9A-Fa-f]{2})|[^A-Za-z0-9\-._~!$&'()*+,;=:@/?%]")


class Origin:
    """Scheme, canonical host and port; `name` has all three, and is the pool's key."""

    __slots__ = ('name', 'is_tls', 'host', 'port', 'field', 'peers')

    def __init__(self, scheme: str, host: str, port: int, address: Address | None) -> None:
        self.is_tls = scheme == 'https'
        self.host = host
        self.port = port
        bracketed = f'[{host}]' if isinstance(address, IPv6Address) else host
        self.name = f'{scheme}://{bracketed}:{port}'
        # RFC 6874 4: a zone is for this machine only.
        without_zone = re.sub('%[^]]*', '', bracketed)
        is_default = port == (443 if self.is_tls else 80)
        self.field = (without_zone if is_default else f'{without_zone}:{port}').encode()
        self.peers = None if address is None else Peers((address,), inf, 0)

    @property
    def server_hostname(self) -> str:
        """What the certificate must be for, and SNI when it is a name."""
        return self.host.partition('%')[0]


class Declared:
    """What the fields of a request say of its body and of its connection."""

    __slots__ = ('has_host', 'length', 'is_coded', 'has_body', 'close', 'upgrade')

    def __init__(self) -> None:
        self.has_host = False
        self.length: int | None = None
        self.is_coded = False
        self.has_body = False
        self.close = False
        self.upgrade = False


NOTHING_DECLARED = Declared()
DECLARING = frozenset((b'host', b'content-length', b'transfer-encoding', b'connection',
                       b'upgrade'))


def build_head(
        method: bytes, url: str, params: Params, headers: Iterable[tuple[bytes, bytes]],
        http_version: bytes) -> tuple[Origin, bytes, Declared]:
    if not isinstance(method, bytes) or method not in USUAL_METHODS:
        check_method(method)
    if not isinstance(url, str):
        raise TypeError(f'url must be a str, got {type(url).__name__}')
    origin, target = parse_url(url)
    if params:
        target = with_params(target, params)
    if not headers:
        return origin, b'%b %b %b\r\nhost: %b\r\n\r\n' % (
            method, target, http_version, origin.field), NOTHING_DECLARED
    lines, declared = build_fields(headers)
    if declared.is_coded and http_version == b'HTTP/1.0':
        raise ValueError('headers must not have transfer-encoding in an HTTP/1.0 request')
    if not declared.has_host:
        lines.insert(0, b'host: ' + origin.field)
    return origin, b'%b %b %b\r\n%b\r\n\r\n' % (
        method, target, http_version, b'\r\n'.join(lines)), declared


def check_method(method: bytes) -> None:
    if not isinstance(method, bytes):
        raise TypeError(f'method must be bytes, got {type(method).__name__}')
    if not TOKEN.fullmatch(method):
        raise ValueError(f'method must be a token, got {shown(method)}')
    if method.upper() == b'CONNECT':
        raise ValueError('method must not be CONNECT: tunnels are not supported')


def build_fields(headers: Iterable[tuple[bytes, bytes]]) -> tuple[list[bytes], Declared]:
    lines = []
    declared = NOTHING_DECLARED
    for field in checked_iterable(headers):
        try:
            name, value = field
        except (TypeError, ValueError):
            raise bad_field(field) from None
        if not isinstance(name, bytes) or not isinstance(value, bytes):
            raise bad_field((name, value))
        if not TOKEN.fullmatch(name):
            raise ValueError(f'headers must have tokens as names, got {shown(name)}')
        if not FIELD_VALUE.fullmatch(value):
            raise ValueError('headers must not have control characters but HTAB in a value: '
                             f'see that of {shown(name)}')
        lines.append(name + b': ' + value)
        lower_name = name.lower()
        if lower_name in DECLARING:
            if declared is NOTHING_DECLARED:
                declared = Declared()
            declare(declared, lower_name, value)
    return lines, declared


def checked_iterable(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    try:
        return iter(headers)
    except TypeError:
        raise bad_field(headers) from None


def bad_field(field: object) -> TypeError:
    return TypeError(f'headers must be pairs of name and value, both bytes, got '
                     f'{shown_types(field)}')


def shown_types(field: object) -> str:
    if isinstance(field, (tuple, list)):
        return f'({", ".join(type(item).__name__ for item in field)})'
    return type(field).__name__


def declare(declared: Declared, lower_name: bytes, value: bytes) -> None:
    if lower_name == b'host':
        if declared.has_host:
            raise ValueError('headers must have at most one host')
        declared.has_host = True
    elif lower_name == b'connection':
        declared.close = declared.close or CLOSE.search(value) is not None
    elif lower_name == b'upgrade':
        declared.upgrade = True
    elif lower_name == b'content-length':
        if declared.length is not None:
            raise ValueError('headers must have at most one content-length')
        if not is_length(value):
            raise ValueError('headers must have 1 to 20 digits as content-length, got '
                             f'{shown(value)}')
        declared.length = int(value)
        declared.has_body = declared.length > 0
    else:
        if declared.is_coded:
            raise ValueError('headers must have at most one transfer-encoding')
        # RFC 9112 6.1: chunked is the last coding of a request, or its end can not be found.
        if value.lower().rpartition(b',')[2].strip(b' \t') != b'chunked':
            raise ValueError('headers must have chunked as the last transfer-encoding, got '
                             f'{shown(value)}')
        declared.is_coded = declared.has_body = True
    if declared.is_coded and declared.length is not None:
        raise ValueError('headers must not have content-length and transfer-encoding together')


@lru_cache(maxsize=256)
def parse_url(url: str) -> tuple[Origin, bytes]:
    """The origin and the request target."""
    control = CONTROL.search(url)
    if control is not None:
        raise ValueError('url must not contain control characters, got '
                         f'{control[0]!r} at index {control.start()}')
    match = URL.match(url)
    if match is None:
        start = re.split('[/?#@:]', url, maxsplit=1)[0][:MAX_SHOWN]
        raise ValueError(f'url must start with http:// or https:// and a host, got {start!r}')
    scheme, authority, target = match.groups()
    origin = parse_origin(scheme.lower(), authority)
    if not target.startswith('/'):
        target = '/' + target
    if TARGET.fullmatch(target):
        return origin, target.encode('ascii')
    try:
        utf_8 = target.encode()
    except UnicodeEncodeError as cause:
        raise ValueError('url must be encodable as UTF-8, but has a lone surrogate') from cause
    return origin, NOT_IN_TARGET.sub(lambda match: b'%%%02X' % ord(match[0]), utf_8)


def with_params(target: bytes, params: Params) -> bytes:
    try:
        query = urlencode(params, doseq=True)  # type: ignore[arg-type]
    except (TypeError, ValueError) as cause:
        raise TypeError('params must be a mapping or a sequence of pairs, as for '
                        f'urllib.parse.urlencode, got {type(params).__name__}') from cause
    if not query:
        return target
    separator = b'?' if b'?' not in target else b'' if target.endswith((b'?', b'&')) else b'&'
    return target + separator + query.encode('ascii')


@lru_cache(maxsize=256)
def parse_origin(scheme: str, authority: str) -> Origin:
    if scheme not in ('http', 'https'):
        raise ValueError(f'url must have the scheme http or https, got {scheme[:20]!r}')
    if '@' in authority:
        raise ValueError('url must not have userinfo (user:password@): use a header')
    match = AUTHORITY.fullmatch(authority)
    if match is None:
        raise ValueError('url must have a host, and a port of digits if any, got '
                         f'{authority[:MAX_SHOWN]!r}')
    host, digits = match.groups()
    port = (443 if scheme == 'https' else 80) if not digits else \
        int(digits) if len(digits) <= 5 else inf
    if not 1 <= port <= 65535:
        raise ValueError(f'url must have a port from 1 to 65535, got {digits[:20]!r}')
    name, address = parse_host(host)
    return Origin(scheme, name, int(port), address)


def parse_host(host: str) -> tuple[str, Address | None]:
    """The one form used for the resolver, SNI, the `host` field and the pool's key."""
    cause = None
    try:
        if host.startswith('['):
            return parse_ipv6(host[1:-1])
        # A name is at most 253 characters (RFC 1035), and the codec is slow on long ones.
        if len(host) <= 254:
            name = (host if host.isascii() else host.encode('idna').decode()).lower()
            name = name.removesuffix('.')
            if IPV4.fullmatch(name):
                ipv4 = IPv4Address(name)
                return str(ipv4), ipv4
            if HOST_NAME.fullmatch(name) and len(name) <= 253:
                return name, None
    except ValueError as error:
        cause = error
    raise ValueError('url must have as host an IPv4 address, an IPv6 address in brackets, or '
                     'a name of letters, digits, "-", "_" and ".", got '
                     f'{host[:MAX_SHOWN]!r}') from cause


def parse_ipv6(literal: str) -> tuple[str, Address]:
    # RFC 6874: a zone follows "%25"; a bare "%", as others write, is understood too.
    address, percent, zone = literal.partition('%')
    if percent:
        zone = zone.removeprefix('25')
        if not ZONE.fullmatch(zone):
            raise ValueError('the zone must be of unreserved characters')
        address = f'{address}%{zone}'
    ipv6 = IPv6Address(address)
    return str(ipv6), ipv6


# --------------------------------------------------------------------------------- sending
#
# The caller's chunks, held to what the head declared of them: a chunk is checked before any
# of it is sent. The caller's time is not on our clock.

# The phase in which it is not the connection that fails.
REQUEST_BODY = 'the request body'


class RequestBody:
    __slots__ = ('connection', 'chunks', 'declared', 'left', 'is_empty', 'steps', 'waited_for')

    def __init__(self, connection: Connection,
                 body: Callable[..., AsyncIterator[bytes]], body_args: Iterable[Any],
                 body_kwargs: Mapping[str, Any] | Iterable[tuple[str, Any]],
                 declared: Declared) -> None:
        self.connection = connection
        connection.phase = REQUEST_BODY
        chunks = body(*body_args, **dict(body_kwargs))
        if not hasattr(chunks, '__aiter__'):
            if isinstance(chunks, types.CoroutineType):
                chunks.close()
            raise TypeError('body must return an async iterator of bytes, as an async function '
                            f'that yields does, got {type(chunks).__name__}')
        self.chunks = aiter(chunks)
        self.declared = declared
        self.left = declared.length or 0
        self.is_empty = True
        self.steps: Any = None
        self.waited_for: Any = None

    def ready(self) -> bytes | None:
        """The next chunk that is not empty, `b''` at the end, or None if it is not there yet."""
        self.connection.phase = REQUEST_BODY
        while True:
            steps = self.step()
            try:
                self.waited_for = steps.send(None)
            except StopAsyncIteration:
                return self.ended()
            except StopIteration as stop:
                chunk = self.checked(stop.value)
                if chunk:
                    return chunk
            else:
                self.steps = steps
                return None

    async def next(self) -> bytes:
        """The next chunk that is not empty, or `b''` at the end."""
        while True:
            if self.steps is None:
                ready = self.ready()
                if ready is not None:
                    return ready
            self.connection.phase = REQUEST_BODY
            steps, self.steps = self.steps, None
            try:
                chunk = self.checked(await remaining_steps(steps, self.waited_for))
            except StopAsyncIteration:
                return self.ended()
            if chunk:
                return chunk

    async def step(self) -> bytes:
        """As a coroutine, because not every awaitable can be stepped."""
        return await anext(self.chunks)

    def ended(self) -> bytes:
        if self.left:
            raise ValueError(f'the body ended {self.left} bytes short of its content-length '
                             f'of {self.declared.length}')
        if self.is_empty and self.declared.is_coded:
            raise ValueError('the body ended without a byte, but transfer-encoding chunked '
                             'needs its last chunk')
        return b''

    def checked(self, chunk: bytes) -> bytes:
        if not isinstance(chunk, bytes):
            chunk = bytes(memoryview(chunk))
        self.is_empty = self.is_empty and not chunk
        if not self.declared.is_coded:
            self.left -= len(chunk)
        if self.left < 0:
            raise ValueError(
                'the body yielded bytes, but headers has no content-length or transfer-encoding'
                if self.declared.length is None else
                f'the body yielded more than its content-length of {self.declared.length}')
        return chunk

    async def close(self, error: BaseException) -> None:
        """Let the caller's generator clean up, now: left to itself, it would in a task.

        What made us close is what the caller gets to know. But a new cancellation wins, and so
        does what the generator made of a cancellation that was its own, as by `asyncio.timeout`.
        """
        task = asyncio.current_task()
        assert task is not None
        cancelling = task.cancelling()
        try:
            try:
                if self.steps is not None:
                    await cancelled_steps(self.steps, self.waited_for)
            finally:
                if hasattr(self.chunks, 'aclose'):
                    await self.chunks.aclose()
        except (CancelledError, Exception):
            is_own = isinstance(error, CancelledError) and task.cancelling() < cancelling
            if is_own or task.cancelling() > cancelling:
                self.connection.phase = REQUEST_BODY
                raise
        else:
            if isinstance(error, CancelledError) and task.cancelling() < cancelling:
                raise TimeoutError('a time-out in the body passed before the head was sent')


async def send_with_body(connection: Connection, head: bytes, body: RequestBody) -> None:
    try:
        chunk: bytes | memoryview | None = body.ready()
        if chunk:
            await connection.send(head + chunk[:MAX_JOINED_CHUNK])
            chunk = memoryview(chunk)[MAX_JOINED_CHUNK:] or await body.next()
        else:
            await connection.send(head)
            chunk = await body.next() if chunk is None else chunk
        while chunk:
            await connection.send(chunk)
            chunk = await body.next()
    except GeneratorExit:
        if body.steps is not None:
            abandon(body.steps, body.waited_for)
        raise
    except BaseException as error:
        connection.close()
        await body.close(error)
        raise


# --------------------------------------------------------------------------- response head
#
# Pure functions of the bytes. A line is judged when its end has arrived, and a section when
# its end has, so the outcome does not depend on how the bytes were cut on their way.

# RFC 9112 4. The space before the reason may be missing along with it, as others accept.
STATUS_LINE = re.compile(rb'HTTP/1\.([01]) ([0-9]{3})(?: [^\r\n\x00]*)?\r?\n')
# RFC 9112 5, RFC 9110 5.5. Leading and trailing whitespace is not part of the value.
FIELD_LINE = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*+([^\r\x00]*[^\r\x00 \t]|)[ \t]*\r?")
# RFC 9112 5.2. Looking behind makes a long run of spaces be tried once, not from each of them.
OBS_FOLD = re.compile(rb'(?<![ \t])(?:[ \t]*+\r?\n[ \t]++)+')


LF = b'\n'
CR = 13


class TooLong(ValueError):
    """Becomes `HttpHeaderTooLong`."""


def find_section_end(data: bytes, start: int) -> int:
    """Index after the last line of a head or trailer section, where its empty line starts.

    0 if that has not arrived. `start` is that of any line end in the section.
    """
    crlf = data.find(b'\n\r\n', start)
    lf = data.find(b'\n\n', start, crlf + 1 if crlf >= 0 else len(data))
    return (crlf if lf < 0 else lf) + 1


def check_status_line(data: bytes, limit: int) -> None:
    """Raise what is wrong with it, unless that is its length: then the head is too long."""
    end = data.index(LF)
    if end < limit:
        raise ValueError('bad status line: expected HTTP/1.0 or HTTP/1.1, a space, three digits '
                         f'and a reason, got {shown(data[:end])}')


def parse_fields(data: bytes, start: int, end: int) -> Fields:
    """The fields of the lines from start to end, which are both after a line end."""
    if start == end:
        return ()
    section = data[start:end - 1]
    try:
        return tuple(map(parse_field_line, section.split(LF)))
    except ValueError:
        unfolded = OBS_FOLD.sub(b' ', section)
        if unfolded == section:
            raise
        return tuple(map(parse_field_line, unfolded.split(LF)))


# Most lines of a response are those of the last one from there: to parse each line only once
# halves the cost of a small response. What is kept is bounded by max_header_length a line.
@lru_cache(maxsize=MAX_FIELD_LINES)
def parse_field_line(line: bytes) -> tuple[bytes, bytes]:
    match = FIELD_LINE.fullmatch(line)
    if match is None:
        raise ValueError(
            f'bad field line: expected a token, ":" and a value, got {shown(line)}')
    name, value = match.groups()
    return name.lower(), value


async def read_head(connection: Connection) -> tuple[bytes, bytes, Fields, bytes]:
    """The status code, minor version and fields of a head, and the bytes after it.

    That of the first response that is not interim (RFC 9110 15.2), or of a 101.
    """
    limit = connection.settings.max_header_length
    data = b''
    for _ in range(MAX_INTERIM_RESPONSES + 1):
        deadline = connection.in_time()
        # At first nothing can have come: to wait at once saves a read that finds nothing.
        more = data or await (connection.read(deadline) if connection.has_started else
                              connection.wait_data(deadline))
        data = b''
        status: re.Match[bytes] | None = None
        end = searched = 0
        while not end:
            if not more:
                raise EOFError('the peer closed the connection, after '
                               + (shown(data) if data else 'no byte of it'))
            data += more
            connection.has_started = True
            if status is None and LF in more:
                status = STATUS_LINE.match(data)
                if status is None:
                    check_status_line(data, limit)
            end = find_section_end(data, searched)
            body = end + (2 if data[end] == CR else 1) if end else len(data) + 1
            if body > limit:
                raise TooLong(f'the head is longer than max_header_length, {limit} bytes')
            if not end:
                searched = max(len(data) - 3, 0)
                more = await connection.read(deadline)
        assert status is not None
        minor, code = status.groups()
        fields = parse_fields(data, status.end(), end)
        data = data[body:]
        if code == b'101' or not code.startswith(b'1'):
            return code, minor, fields, data
    raise ValueError(f'got more than {MAX_INTERIM_RESPONSES} interim responses')


# ------------------------------------------------------------------------ framing and body
#
# A decoder takes the bytes after the head, in pieces of any size, and returns the content in
# them. `is_done` is set with the last byte of the body, `has_surplus` if there were more.

CLOSE = re.compile(rb'(?:^|,)[ \t]*close[ \t]*(?:,|$)', re.IGNORECASE)
KEEP_ALIVE = re.compile(rb'(?:^|,)[ \t]*keep-alive[ \t]*(?:,|$)', re.IGNORECASE)
KEEP_ALIVE_TIMEOUT = re.compile(rb'(?:^|[,; \t])timeout[ \t]*=[ \t]*"?([0-9]{1,9})', re.IGNORECASE)
FRAMING = frozenset((b'content-length', b'transfer-encoding', b'connection', b'keep-alive'))

# RFC 9112 7.1. After the first one, a chunk-size line follows the CRLF that ends the data.
FIRST_CHUNK_LINE = re.compile(rb'([0-9A-Fa-f]{1,16})(?:[ \t]*;[^\r\n\x00]*)?\r\n')
NEXT_CHUNK_LINE = re.compile(rb'\r\n' + FIRST_CHUNK_LINE.pattern)


def frame(method: bytes, code: bytes, minor: bytes, fields: Fields,
          settings: Settings) -> tuple[Decoder, float]:
    """The decoder of the body, and how long the connection may idle afterwards, in seconds."""
    length: int | None = None
    codings: list[bytes] = []
    persists = minor == b'1'
    keep_alive = settings.keep_alive_timeout
    for name, value in fields:
        if name not in FRAMING:
            continue
        if name == b'content-length':
            length = parse_length(value, length)
        elif name == b'transfer-encoding':
            if value.lower() != b'identity':
                codings.append(value.lower())
        elif name == b'keep-alive':
            keep_alive = min(keep_alive, parse_keep_alive(value))
        elif CLOSE.search(value):  # RFC 9112 9.3
            keep_alive = 0
        else:
            persists = persists or KEEP_ALIVE.search(value) is not None
    # RFC 9112 6.1: chunked with a length, or in HTTP/1.0, may be somebody's attack.
    if not persists or codings and (minor == b'0' or length is not None):
        keep_alive = 0
    # RFC 9112 6.3, 1: no body, whatever the fields say.
    if method == b'HEAD' or code == b'204' or code == b'304':
        return LengthDecoder(0), keep_alive
    # 6.3, 2: a switched protocol has an end of its own. (CONNECT is never sent.)
    if code == b'101':
        return CloseDecoder(), 0
    # 6.3, 3 and 4: chunked is stronger than a length.
    if codings:
        if codings != [b'chunked']:
            raise ValueError('bad transfer-encoding: expected chunked, got '
                             f'{shown(b", ".join(codings))}')
        return ChunkedDecoder(settings.max_header_length), keep_alive
    # 6.3, 5 and 6.
    if length is not None:
        return LengthDecoder(length), keep_alive
    # 6.3, 8.
    return CloseDecoder(), 0


def parse_length(value: bytes, before: int | None) -> int:
    if not is_length(value):
        raise ValueError(f'bad content-length: expected 1 to 20 digits, got {shown(value)}')
    length = int(value)
    if before is not None and length != before:
        raise ValueError(f'bad content-length: expected one, got {before} and {shown(value)}')
    return length


def is_length(value: bytes) -> bool:
    return value.isdigit() and len(value) <= 20


def parse_keep_alive(value: bytes) -> float:
    """Less than the `timeout` that the server gives: the request has to be there in time."""
    timeout = KEEP_ALIVE_TIMEOUT.search(value)
    return inf if timeout is None else int(timeout[1]) - 1


class LengthDecoder:
    """RFC 9112 6.2: as many bytes as content-length says."""

    __slots__ = ('left', 'is_done', 'has_surplus')
    trailers: Fields = ()

    def __init__(self, length: int) -> None:
        self.left = length
        self.is_done = False
        self.has_surplus = False

    def feed(self, data: bytes) -> bytes:
        self.left -= len(data)
        if self.left > 0:
            return data
        self.is_done = True
        if self.left:
            self.has_surplus = True
            data = data[:self.left]
        return data

    def feed_end(self) -> bytes:
        raise EOFError(f'the peer closed the connection, {self.left} bytes before the end that '
                       'content-length told')


class CloseDecoder:
    """RFC 9112 6.3, 8: all until the peer closes the connection."""

    __slots__ = ('is_done',)
    has_surplus = False
    trailers: Fields = ()

    def __init__(self) -> None:
        self.is_done = False

    def feed(self, data: bytes) -> bytes:
        return data

    def feed_end(self) -> bytes:
        self.is_done = True
        return b''


class ChunkedDecoder:
    """RFC 9112 7.1: chunks, each with its size before it, and then the trailer section."""

    __slots__ = ('limit', 'left', 'partial', 'line', 'is_trailer', 'content', 'overhead',
                 'is_done', 'has_surplus', 'trailers')

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.left = 0
        self.partial = b''
        self.line = FIRST_CHUNK_LINE
        self.is_trailer = False
        self.content = 0
        self.overhead = 0
        self.is_done = False
        self.has_surplus = False
        self.trailers: Fields = ()

    def feed(self, data: bytes) -> bytes:
        if self.is_trailer:
            self.feed_trailer(data)
            return b''
        start = 0
        if self.partial:
            # Only a line end can complete a line: until there is one, nothing is tried again.
            is_complete = b'\n' in data
            data, self.partial = self.partial + data, b''
            if not is_complete:
                self.keep(data)
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
                self.keep(data[start:])
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
            raise self.too_long('chunk-size line')
        self.overhead += line.end() - line.start()
        if self.overhead > MAX_FRAMING_OVERHEAD + MAX_FRAMING_OVERHEAD_RATIO * self.content:
            raise ValueError(f'the framing of the chunked body is out of proportion: '
                             f'{self.overhead} bytes for {self.content} of content')
        self.left = int(line[1], 16)
        self.content += self.left
        self.line = NEXT_CHUNK_LINE

    def keep(self, partial: bytes) -> None:
        """Keep what does not match a chunk-size line for more to come, unless it is bad."""
        is_next = self.line is NEXT_CHUNK_LINE
        start = 2 if is_next and b'\r\n'.startswith(partial[:2]) else 0
        end = partial.find(b'\n', start)
        if (end if end >= 0 else len(partial)) - start >= self.limit:
            raise self.too_long('chunk-size line')
        if end >= 0:
            expected = 'CRLF after the chunk, ' if is_next else ''
            raise ValueError(f'bad chunk-size line: expected {expected}1 to 16 hex digits, an '
                             f'optional extension and CRLF, got {shown(partial[:end + 1])}')
        self.partial = partial

    def feed_trailer(self, data: bytes) -> None:
        """The trailer section, from the line end before it."""
        searched = max(len(self.partial) - 3, 0)
        self.partial += data
        end = find_section_end(self.partial, searched)
        after = end + (2 if self.partial[end] == CR else 1) if end else len(self.partial) + 1
        if after > self.limit + 1:
            raise self.too_long('trailer section')
        if end:
            self.trailers = parse_fields(self.partial, 1, end)
            self.is_done = True
            self.has_surplus = after < len(self.partial)
            self.partial = b''

    def too_long(self, what: str) -> TooLong:
        return TooLong(f'the {what} is longer than max_header_length, {self.limit} bytes')

    def feed_end(self) -> bytes:
        raise EOFError('the peer closed the connection in ' + (
            'the trailer section' if self.is_trailer else
            f'a chunk, {self.left} bytes before its end' if self.left else
            'a chunk-size line'))


Decoder = LengthDecoder | CloseDecoder | ChunkedDecoder


class ResponseBody:
    """The content of a response, as an async iterator of bytes.

    Read, its connection can be reused after the last byte. Closed with `aclose`, or dropped,
    before that, it closes its connection.
    """

    __slots__ = ('trailers', '_chunk', '_connection', '_decoder', '_error')

    def __init__(self, connection: Connection, decoder: Decoder, data: bytes) -> None:
        self.trailers: Fields = ()
        """The fields after a chunked body, as pairs like those of the headers, once it ended."""
        self._connection: Connection | None = connection
        self._decoder = decoder
        self._error: HttpError | None = None
        self._chunk = decoder.feed(data)
        if decoder.is_done:
            self._finish(connection)

    def _finish(self, connection: Connection) -> None:
        self._connection = None
        self.trailers = self._decoder.trailers
        connection.release(self._decoder.has_surplus)

    def __aiter__(self) -> ResponseBody:
        return self

    async def __anext__(self) -> bytes:
        chunk, self._chunk = self._chunk, b''
        while not chunk:
            if self._connection is None:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            chunk = await self._read(self._connection)
        return chunk

    async def _read(self, connection: Connection) -> bytes:
        try:
            data = await connection.read()
            chunk = self._decoder.feed(data) if data else self._decoder.feed_end()
            if self._decoder.is_done:
                self._finish(connection)
            return chunk
        except BaseException as cause:
            # Whoever asks again must not take what there was for the whole.
            self._connection = None
            self._error = exchange_error(connection, cause)
            self._error.__cause__ = cause
            connection.close()
            if isinstance(cause, Exception):
                raise self._error from cause
            raise

    def _take_whole(self) -> bytes | None:
        """All that is left of the body if it has arrived, or else None."""
        if self._connection is not None or self._error is not None:
            return None
        chunk, self._chunk = self._chunk, b''
        return chunk

    async def aclose(self) -> None:
        """Close the connection, unless the whole response has arrived."""
        self._chunk = b''
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __del__(self) -> None:
        if self._connection is not None:
            self._connection.close_from_anywhere()


Response = tuple[bytes, Fields, ResponseBody]


# ------------------------------------------------------------------ connection and waiting
#
# A socket with what is known of it, and the only place that touches the loop's readers,
# writers and timers. It is owned by one at a time: the opener, an exchange, a response body,
# the idle connections. `close` is idempotent, and leaves nothing of it in the loop.
#
# The reader is registered once, for the connection's life, and wakes whoever waits. A timeout
# is a deadline that is stored at each wait, and one timer that looks at it now and then.

WANT_READ = (BlockingIOError, ssl.SSLWantReadError)


def wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Connection:
    __slots__ = (
        'loop', 'sock', 'fd', 'poller', 'origin', 'peer', 'settings', 'idle',
        'data_waiter', 'reader', 'writer', 'is_reading', 'is_writing',
        'deadline', 'timer', 'timer_at',
        'is_idle', 'keep_alive',
        'requests', 'method', 'phase', 'has_sent', 'has_started', 'burst', 'is_full')

    def __init__(self, loop: Loop, sock: socket.socket, origin: Origin, peer: str,
                 settings: Settings, idle: IdleConnections) -> None:
        sock.setblocking(False)
        self.loop = loop
        self.sock = sock
        self.fd = sock.fileno()
        # A look through it is a third of the price of a read that finds nothing.
        self.poller = select.poll()
        self.poller.register(self.fd, select.POLLIN)
        self.origin = origin
        self.peer = peer
        self.settings = settings
        self.idle = idle
        # What waits for the socket to be readable and writable. It may be one future.
        self.data_waiter: asyncio.Future[bytes] | None = None
        self.reader: asyncio.Future[None] | None = None
        self.writer: asyncio.Future[None] | None = None
        self.is_reading = False
        self.is_writing = False
        self.deadline = inf
        self.timer: asyncio.TimerHandle | None = None
        self.timer_at = inf
        self.is_idle = False
        self.keep_alive: float = 0
        self.requests = 0
        self.method = b''
        self.phase = ''
        self.has_sent = False
        self.has_started = False
        self.burst = 0
        self.is_full = False
        idle.opened.add(self)

    def describe(self) -> str:
        peer = f'[{self.peer}]' if ':' in self.peer else self.peer
        return f'{self.origin.name} (peer {peer}:{self.origin.port})'

    # Opening

    async def connect(self, address: tuple[Any, ...], deadline: float) -> None:
        try:
            self.sock.connect(address)
        except BlockingIOError:
            await self.wait_writable(deadline)
            code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, strerror(code)) from None

    async def start_tls(self, context: ssl.SSLContext, deadline: float) -> None:
        # An end without close_notify must not look like one with it, so it is an error.
        sock = self.sock = context.wrap_socket(
            self.sock, server_hostname=self.origin.server_hostname,
            do_handshake_on_connect=False, suppress_ragged_eofs=False)
        while True:
            try:
                sock.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self.wait_readable(deadline)
            except ssl.SSLWantWriteError:
                await self.wait_writable(deadline)
        protocol = sock.selected_alpn_protocol()
        if protocol not in (None, 'http/1.1', 'http/1.0'):
            raise ssl.SSLError(
                ssl.SSL_ERROR_SSL, f'the negotiated protocol must be http/1.1, got {protocol!r}')

    # One exchange

    async def send(self, data: bytes | memoryview) -> None:
        """Hand all of it to the kernel. The time is that of each progress."""
        self.phase = 'sending the request'
        if self.origin.is_tls:
            # A TLS write that fails may have sent a part of its record.
            self.has_sent = True
        while True:
            try:
                count = self.sock.send(data)
            except (BlockingIOError, ssl.SSLWantWriteError):
                await self.wait_writable(self.in_time())
                self.burst = 0
            except ssl.SSLWantReadError:
                await self.wait_readable(self.in_time())
            else:
                self.has_sent = True
                self.burst += count
                if self.burst >= MAX_BURST:
                    await self.take_turns()
                if count == len(data):
                    return
                data = memoryview(data)[count:]

    async def read(self, deadline: float | None = None) -> bytes:
        """What is there, or what comes first; `b''` at the end."""
        if self.burst >= MAX_BURST:
            await self.take_turns()
        if self.fd < 0:
            raise ConnectionAbortedError('the connection was closed meanwhile')
        if self.data_waiter is not None:
            raise RuntimeError('the body is being read by another task')
        try:
            # Not through the loop: TLS may hold bytes that a selector can not see.
            data = self.receive()
        except WANT_READ:
            data = await self.wait_data(deadline or self.in_time())
            self.burst = 0
        except ssl.SSLWantWriteError:
            self.start_writing()
            data = await self.wait_data(deadline or self.in_time())
        else:
            # The smallest read takes its time, too.
            self.burst += len(data) + 1024
        return data

    def receive(self) -> bytes:
        size = self.settings.recv_bufsize
        data = self.sock.recv(size)
        self.is_full = len(data) == size
        return data

    async def take_turns(self) -> None:
        """Give other tasks theirs: this one has moved many bytes without waiting."""
        self.burst = 0
        await asyncio.sleep(0)

    def release(self, has_surplus: bool) -> None:
        """The response has ended: become idle, or close.

        A read that was filled may have left bytes behind.
        """
        if (self.keep_alive > 0 and not has_surplus and not (self.is_full and not self.is_quiet())
                and self.idle.add(self)):
            self.is_idle = True
            self.set_deadline(self.loop.time() + self.keep_alive)
            if not self.is_reading:
                self.start_reading()
        else:
            self.close()

    def is_reusable(self, now: float) -> bool:
        """Not expired, and nothing has come, not even since the loop looked last."""
        return now < self.deadline and (not self.poller.poll(0) or self.is_quiet())

    def is_quiet(self) -> bool:
        """Neither data nor an end has come. (TLS session tickets are neither.)"""
        try:
            self.sock.recv(1)
        except WANT_READ:
            return True
        except OSError:
            pass
        return False

    # Waiting

    def in_time(self) -> float:
        return self.loop.time() + self.settings.socket_timeout

    def wait_data(self, deadline: float) -> asyncio.Future[bytes]:
        if not self.is_reading:
            self.start_reading()
        self.set_deadline(deadline)
        self.data_waiter = waiter = self.loop.create_future()
        return waiter

    def wait_readable(self, deadline: float) -> asyncio.Future[None]:
        if not self.is_reading:
            self.start_reading()
        self.set_deadline(deadline)
        self.reader = waiter = self.loop.create_future()
        return waiter

    def wait_writable(self, deadline: float) -> asyncio.Future[None]:
        self.start_writing()
        self.set_deadline(deadline)
        self.writer = waiter = self.loop.create_future()
        return waiter

    def start_reading(self) -> None:
        self.loop.add_reader(self.fd, self.on_readable)
        self.is_reading = True

    def stop_reading(self) -> None:
        self.loop.remove_reader(self.fd)
        self.is_reading = False

    def start_writing(self) -> None:
        self.loop.add_writer(self.fd, self.on_writable)
        self.is_writing = True

    def on_readable(self) -> None:
        if self.data_waiter is not None:
            self.deliver(self.data_waiter)
        elif self.reader is not None:
            reader, self.reader = self.reader, None
            wake(reader)
        elif not self.is_idle:
            # Nobody reads now. Until somebody does, the loop need not look again and again.
            self.stop_reading()
        elif not self.is_quiet():
            self.close()

    def deliver(self, waiter: asyncio.Future[bytes]) -> None:
        """Read for whoever waits: until it runs, the loop would find the same bytes again."""
        try:
            data = self.receive()
        except WANT_READ:
            return
        except ssl.SSLWantWriteError:
            # Only the wanted direction, or what can be read would be found again and again.
            self.stop_reading()
            self.start_writing()
            return
        except Exception as error:
            if not waiter.done():
                waiter.set_exception(error)
        else:
            if not waiter.done():
                waiter.set_result(data)
        self.data_waiter = None

    def on_writable(self) -> None:
        self.loop.remove_writer(self.fd)
        self.is_writing = False
        writer, self.writer = self.writer, None
        if writer is not None:
            wake(writer)
        elif self.data_waiter is not None:
            self.start_reading()
            self.deliver(self.data_waiter)

    def set_deadline(self, deadline: float) -> None:
        self.deadline = deadline
        if deadline < self.timer_at:
            self.start_timer()

    def start_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.timer_at = self.deadline
        self.timer = self.loop.call_at(self.deadline, self.on_timer)

    def on_timer(self) -> None:
        is_late = self.deadline <= self.timer_at
        self.timer = None
        self.timer_at = inf
        if not is_late:
            self.start_timer()
        elif self.is_idle:
            self.close()
        else:
            for waiter in (self.data_waiter, self.reader, self.writer):
                if waiter is not None and not waiter.done():
                    waiter.set_exception(timed_out(self.settings.socket_timeout))

    # Closing

    def close(self) -> None:
        if self.fd < 0:
            return
        self.idle.opened.discard(self)
        if self.is_idle:
            self.is_idle = False
            self.idle.remove(self)
        if not self.loop.is_closed():
            # Before the socket: its number may be that of another one at once.
            if self.is_reading:
                self.loop.remove_reader(self.fd)
            if self.is_writing:
                self.loop.remove_writer(self.fd)
            if self.timer is not None:
                self.timer.cancel()
        self.fd = -1
        self.timer = None
        if self.data_waiter is not None and not self.data_waiter.done():
            self.data_waiter.set_exception(ConnectionAbortedError('closed meanwhile'))
            # To the loop it is retrieved, should nobody wait any more.
            self.data_waiter.exception()
        self.data_waiter = self.reader = self.writer = None
        if isinstance(self.sock, ssl.SSLSocket):
            # RFC 8446 6.1: say goodbye, without waiting for an answer.
            with contextlib.suppress(OSError, ValueError):
                self.sock.unwrap()
        self.sock.close()

    def close_from_anywhere(self) -> None:
        """Close, as a finalizer has to: in any thread, whether or not the loop runs."""
        try:
            is_here = asyncio.get_running_loop() is self.loop
        except RuntimeError:
            is_here = False
        if is_here or not self.loop.is_running():
            self.close()
        else:
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self.close)
