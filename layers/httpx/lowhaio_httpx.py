# Made of layers/httpx2/lowhaio_httpx2.py by .ci/transports.py.
"""httpx on lowhaio: a transport in place of `httpx.AsyncHTTPTransport`, and a client with it.

::

    client = openai.AsyncOpenAI(http_client=client_for_openai())
    client = httpx.AsyncClient(transport=LowhaioTransport())

From top to bottom: the clients, the transport, the content of a request, that of a response, what
can be done with a connection after 101, the errors, and how connections are made through proxies.

The transport owns a pool of lowhaio for each event loop. A response owns its connection until its
stream has ended or was closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
from abc import ABC, abstractmethod
from asyncio import AbstractEventLoop, get_running_loop
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from collections.abc import Coroutine, Iterable, Mapping
from functools import partial
from ipaddress import ip_address
from typing import Any, NoReturn, cast
from urllib.request import getproxies

import httpx
from lowhaio import (
    Body,
    Close,
    ConnectionFacts,
    Fields,
    HttpConnectionError,
    HttpError,
    Pool,
    Request,
    ResponseBody,
    canonical_host,
    empty_async_iterator,
    streamed,
)

__version__ = '0.1.0'
__all__ = ['LowhaioAsyncClient', 'LowhaioTransport', 'client_for_anthropic', 'client_for_openai']

SocketOption = tuple[int, int, int | bytes | bytearray] | tuple[int, int, None, int]

# What httpx has by default.
DEFAULT_LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20)
# What the SDKs of OpenAI and Anthropic have by default.
SDK_LIMITS = httpx.Limits(max_connections=1000, max_keepalive_connections=100)
SDK_TIMEOUT = httpx.Timeout(600, connect=5)

# Bytes of the head of a response, as in httpx.
MAX_HEADER_LENGTH = 100 * 1024
# Seconds that stand for no limit at all. It is the most that lowhaio allows.
NEVER = 1e9
# Origins that a transport remembers.
MAX_ORIGINS = 512
# Seconds before the second retry. It doubles with each further one. The first comes at once.
BACKOFF = 0.5
# Bytes of what a proxy answers.
MAX_PROXY_HEAD = 16 * 1024

NO_LOOP = ('lowhaio needs a running event loop of asyncio, or of uvloop, in this thread. It can '
           'not be used with trio')
LOWHAIO_SCHEMES = {'http': 'http', 'https': 'https', 'ws': 'http', 'wss': 'https'}


# --------------------------------------------------------------------------------- clients
#
# A client that is given a transport uses it for everything, and ignores its own `limits`, `proxy`
# and the environment. So the client here makes the transports that httpx's own client would make.

class LowhaioAsyncClient(httpx.AsyncClient):
    """An `httpx.AsyncClient` that is on lowhaio: it takes the same arguments.

    `verify`, `cert`, `trust_env`, `http1`, `http2`, `limits`, `proxy` and `mounts` do what they do
    in the stock client, and so do the proxies of the environment. With a `transport` it is the
    stock client. `options` are all other arguments.
    """

    def __init__(
            self, *, verify: ssl.SSLContext | str | bool = True,
            cert: str | tuple[str, str] | tuple[str, str, str] | None = None,
            trust_env: bool = True, http1: bool = True, http2: bool = False,
            proxy: httpx.URL | str | httpx.Proxy | None = None,
            mounts: Mapping[str, httpx.AsyncBaseTransport | None] | None = None,
            limits: httpx.Limits = DEFAULT_LIMITS,
            transport: httpx.AsyncBaseTransport | None = None,
            socket_options: Iterable[SocketOption] | None = None, **options: Any) -> None:
        proxies: Mapping[str, httpx.URL | str | httpx.Proxy | None] = {}
        if proxy is not None:
            proxies = {'all://': proxy}
        elif trust_env and transport is None:
            proxies = environment_proxies()
        if transport is None or proxies:
            # One for all transports, because it takes time to read the authorities.
            verify = httpx.create_ssl_context(verify=verify, cert=cert, trust_env=trust_env)
        make = partial(
            LowhaioTransport, verify=verify, trust_env=trust_env, http1=http1, http2=http2,
            limits=limits, socket_options=None if socket_options is None else
            tuple(socket_options))
        all_mounts = {pattern: None if each is None else make(proxy=each)
                      for pattern, each in proxies.items()}
        super().__init__(transport=make() if transport is None else transport,
                         mounts={**all_mounts, **(mounts or {})}, trust_env=trust_env, **options)


def client_for_openai(**options: Any) -> LowhaioAsyncClient:
    """Return a client for `openai.AsyncOpenAI(http_client=…)`, with the defaults of that SDK.

    They are a timeout of 600 seconds, of which 5 to connect, 1,000 connections, of which 100 may
    idle, and that redirects are followed. `options` are arguments of `LowhaioAsyncClient`.
    """
    return LowhaioAsyncClient(**{
        'timeout': SDK_TIMEOUT, 'limits': SDK_LIMITS, 'follow_redirects': True, **options})


def client_for_anthropic(**options: Any) -> LowhaioAsyncClient:
    """Return a client for `anthropic.AsyncAnthropic(http_client=…)`, with that SDK's defaults.

    They are those of `client_for_openai`, and probes of TCP each minute, so that no router forgets
    a connection on which nothing comes. `options` are arguments of `LowhaioAsyncClient`.
    """
    return client_for_openai(**{'socket_options': probes(), **options})


def probes() -> list[SocketOption]:
    """Probe a silent connection after a minute and then each minute, and give it up after five."""
    # macOS calls TCP_KEEPIDLE TCP_KEEPALIVE.
    idle = 'TCP_KEEPIDLE' if hasattr(socket, 'TCP_KEEPIDLE') else 'TCP_KEEPALIVE'
    return [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in ((idle, 60), ('TCP_KEEPINTVL', 60), ('TCP_KEEPCNT', 5))
        if hasattr(socket, name))]


def environment_proxies() -> dict[str, str | None]:
    """The proxies of the environment by the pattern of `mounts` that each is for, as httpx reads
    them. None is for no proxy."""
    found = getproxies()
    proxies: dict[str, str | None] = {}
    for scheme in ('http', 'https', 'all'):
        url = found.get(scheme)
        if url:
            proxies[f'{scheme}://'] = url if '://' in url else f'http://{url}'
    for host in (host.strip() for host in found.get('no', '').split(',')):
        if host == '*':
            return {}
        pattern = unproxied_pattern(host)
        if pattern is not None:
            proxies[pattern] = None
    return proxies


def unproxied_pattern(host: str) -> str | None:
    """The pattern for an entry of NO_PROXY. None for one that can not be read: it is ignored."""
    address, slash, bits = host.partition('/')
    if not host:
        return None
    if '://' in host:
        pattern = host
    elif is_address(address) and (bits.isdigit() or not slash):
        pattern = f'all://[{address}]{slash}{bits}' if ':' in address else f'all://{host}'
    elif slash:
        return None
    elif host.startswith(('[', '*.')) or host.lower() == 'localhost':
        pattern = f'all://{host}'
    else:
        # The host, and all below it.
        pattern = f'all://*{host}'
    try:
        httpx.URL(pattern)
    except httpx.InvalidURL:
        return None
    return pattern


def is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


# ------------------------------------------------------------------------------- transport

class LowhaioTransport(httpx.AsyncBaseTransport):
    """Takes the place of `httpx.AsyncHTTPTransport`, and takes the same arguments.

    - `verify`, `cert`, `trust_env`: as for `httpx.create_ssl_context`.
    - `http1`, `http2`: it is always HTTP/1.1, so `http2` without `http1` is a ValueError.
    - `limits`: `max_connections`, `max_keepalive_connections` of them may idle, for
      `keepalive_expiry` seconds each. None is for no limit.
    - `proxy`: of HTTP, or of SOCKS5. One that is reached by TLS is a ValueError.
    - `uds`: the path of a Unix socket that all connections lead to.
    - `local_address`: the IP address that all connections come from.
    - `retries`: how often it is tried again to connect, after 0, 0.5, 1, 2 and so on seconds.
    - `socket_options`: arguments of `setsockopt`. They are set before the socket is connected.

    It can be used from several event loops, and each has its own pool. `aclose` may be called more
    than once, and the transport can be used again after it.
    """

    def __init__(
            self, verify: ssl.SSLContext | str | bool = True,
            cert: str | tuple[str, str] | tuple[str, str, str] | None = None,
            trust_env: bool = True, http1: bool = True, http2: bool = False,
            limits: httpx.Limits = DEFAULT_LIMITS,
            proxy: httpx.URL | str | httpx.Proxy | None = None,
            uds: str | None = None, local_address: str | None = None, retries: int = 0,
            socket_options: Iterable[SocketOption] | None = None) -> None:
        # By the loop. A pool keeps its loop alive anyway, so weak references would be of no use.
        self._pools: dict[AbstractEventLoop, tuple[Request, Close]] = {}
        # The loop that was used last, and the `request` of its pool, in one attribute because
        # there may be loops in several threads.
        self._bound: tuple[AbstractEventLoop | None, Request | None] = (None, None)
        if http2 and not http1:
            raise ValueError('http2=True needs http1=True, because lowhaio speaks HTTP/1.1 only')
        if isinstance(proxy, (str, httpx.URL)):
            proxy = httpx.Proxy(proxy)
        ssl_context = httpx.create_ssl_context(verify=verify, cert=cert, trust_env=trust_env)
        make_socket = SocketMaker(local_address, socket_options)
        expiry = limits.keepalive_expiry
        self._options: dict[str, Any] = {
            'get_ssl_context': partial(prepared, ssl_context),
            'max_connections': limits.max_connections,
            'max_idle_connections': limits.max_keepalive_connections,
            'keep_alive_timeout': NEVER if expiry is None else expiry,
            'max_header_length': MAX_HEADER_LENGTH,
            # A request that has no times of its own waits for ever.
            'socket_timeout': NEVER,
        }
        # Set if a proxy gets the requests for http, and does not make a tunnel for them.
        self._forward: HttpProxy | None = None
        if proxy is not None:
            self._options['get_connection'] = connector = connector_by(proxy, make_socket)
            if isinstance(connector, HttpProxy):
                self._forward = connector
        elif uds is not None:
            self._options['get_connection'] = UnixConnector(
                uds, SocketMaker(None, socket_options))
        elif local_address is not None or socket_options is not None:
            self._options['get_sock'] = make_socket
        self._retries = retries
        # The origins of the URLs, as lowhaio needs them.
        self._origins: dict[tuple[str, bytes], str] = {}
        # A head often is the same as the last one. These are its fields, and what httpx makes of
        # them, which is copied by a response.
        self._last_head: tuple[Fields, httpx.Headers] = ((), httpx.Headers())
        # A wrong option is to fail here, not at the first request.
        self._spare: tuple[Request, Close] | None = Pool(**self._options)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request. Return its response, with the stream of its body, when its head is here.

        Raises the exceptions of httpx, as the stock transport does, each from the `HttpError` of
        lowhaio. An exception of the request's own stream comes out as it is.
        """
        try:
            loop = get_running_loop()
        except RuntimeError:
            raise RuntimeError(NO_LOOP) from None
        bound_loop, send = self._bound
        if send is None or loop is not bound_loop:
            send = await self._bind(loop)

        url, extensions, fields = request.url, request.extensions, request.headers.raw
        origin = self._origins.get((url.scheme, url.netloc)) or self._origin_of(url)
        target = url.raw_path
        if 'target' in extensions:
            target = extensions['target']
            if isinstance(target, str):
                target = target.encode()
        if self._forward is not None and url.scheme == 'http':
            origin, target, fields = self._forward.forwarded(url, target, fields)
        times = extensions.get('timeout') or {}
        for seconds in times.values():
            if seconds is not None and seconds > NEVER:
                times = bounded(times)
        is_coded = False
        for name, _ in fields:
            # Most names are told apart by their lengths.
            if len(name) == 17 and name.lower() == b'transfer-encoding':
                is_coded = True
        if is_coded:
            # RFC 9112 6.2: a length must not be beside it.
            fields = [field for field in fields if field[0].lower() != b'content-length']
        stream = request.stream
        sent: SentContent | None = None
        body: Body = empty_async_iterator
        if type(stream) is httpx.ByteStream:
            data = b''.join(stream)
            if is_coded:
                data = coded(data) + LAST_CHUNK if data else LAST_CHUNK
            if data:
                body = streamed(data)
        else:
            sent = SentContent(cast('AsyncIterable[bytes]', stream))
            body = sent.coded if is_coded else sent.plain

        try:
            code, received_fields, received = await send(
                request.method.encode('ascii'), origin, (), fields, body,
                timeouts=times, target=target,
                server_hostname=extensions.get('sni_hostname') or None)
        except HttpError as error:
            if sent is None or not sent.is_cause_of(error):
                raise translated(error) from error
        else:
            last_fields, headers = self._last_head
            if received_fields is not last_fields:
                headers = httpx.Headers(received_fields)
                self._last_head = received_fields, headers
            response = httpx.Response(
                int(code), headers=headers, stream=LowhaioStream(received, sent), extensions={
                    'http_version': received.http_version,
                    'reason_phrase': received.reason,
                    'network_stream': NetworkStream(received, code == b'101'),
                })
            if 'trace' in extensions:
                await trace_response(extensions['trace'], response)
            return response
        assert sent is not None
        raise sent.taken_failure()

    async def aclose(self) -> None:
        """Close the idle connections at once, and those in use when their responses end.

        A loop that runs in another thread keeps its connections. Close them there.
        """
        self._bound = (None, None)
        for close in self._taken(lambda loop: not loop.is_running() or loop is get_running_loop()):
            await close()

    async def _bind(self, loop: AbstractEventLoop) -> Request:
        """Return the `request` of the pool of this loop."""
        pool = self._pools.get(loop)
        if pool is None:
            request, close = self._spare or Pool(**self._options)
            self._spare = None
            pool = self._pools[loop] = (
                retrying(request, self._retries) if self._retries else request, close)
        self._bound = loop, pool[0]
        for close in self._taken(lambda loop: loop.is_closed()):
            await close()
        return pool[0]

    def _taken(self, is_over: Callable[[AbstractEventLoop], bool]) -> list[Close]:
        """Give up the pools of such loops. Returns what closes them."""
        return [self._pools.pop(loop)[1] for loop in list(self._pools) if is_over(loop)]

    def __del__(self) -> None:
        # Most programs end without closing their clients. The connections of a loop that is closed
        # can be closed here, because nothing has to be awaited for that.
        for close in self._taken(lambda loop: loop.is_closed()):
            with contextlib.suppress(Exception):
                close().send(None)

    def _origin_of(self, url: httpx.URL) -> str:
        """The URL as lowhaio gets it: without its userinfo, and without the target."""
        scheme = LOWHAIO_SCHEMES.get(url.scheme)
        if scheme is None:
            raise httpx.UnsupportedProtocol(
                f"Request URL has an unsupported protocol '{url.scheme}://'." if url.scheme else
                "Request URL is missing an 'http://' or 'https://' protocol.")
        if len(self._origins) >= MAX_ORIGINS:
            self._origins.clear()
        origin = self._origins[url.scheme, url.netloc] = f'{scheme}://{url.netloc.decode()}/'
        return origin


def bounded(times: Mapping[str, float | None]) -> dict[str, float | None]:
    """Without what is so long that lowhaio takes it for a mistake, as infinity is."""
    return {kind: None if seconds is None or seconds > NEVER else seconds
            for kind, seconds in times.items()}


def retrying(request: Request, retries: int) -> Request:
    """A layer that tries again to connect, as the stock transport does."""
    async def request_with_retries(*args: Any, **kwargs: Any) -> Any:
        delay: float = 0
        for _ in range(retries):
            try:
                return await request(*args, **kwargs)
            except HttpConnectionError as error:
                if error.phase not in CONNECTING or is_proxy_error(error):
                    raise
            await asyncio.sleep(delay)
            delay = delay * 2 or BACKOFF
        return await request(*args, **kwargs)

    return cast('Request', request_with_retries)


def prepared(context: ssl.SSLContext) -> ssl.SSLContext:
    """What the pool makes TLS with."""
    context.set_alpn_protocols(['http/1.1'])
    if type(context).__module__.partition('.')[0] == 'truststore':
        return cast('ssl.SSLContext', Unresumed(context))
    return context


class Unresumed:
    """An SSL context of truststore, without the resumption of sessions.

    On macOS and Windows truststore gives the system the chain of certificates that has come in the
    handshake. When a session is resumed, none comes, and what the system is given is empty: it
    refuses that. So the sockets have no session that anybody could resume.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context

    def wrap_socket(self, sock: socket.socket, **options: Any) -> ssl.SSLSocket:
        wrapped = self._context.wrap_socket(sock, **options)
        wrapped.__class__ = type('UnresumedSocket', (type(wrapped),), {'session': None})
        return wrapped


# ----------------------------------------------------------------------------- the content
#
# The stream of a request becomes what lowhaio takes: plain chunks for a content-length, coded ones
# for transfer-encoding: chunked. The body of a response becomes a stream of httpx.

LAST_CHUNK = b'0\r\n\r\n'


def coded(chunk: bytes) -> bytes:
    """RFC 9112 7.1."""
    return b'%x\r\n%b\r\n' % (len(chunk), chunk)


class SentContent:
    """The stream of a request, and how it failed: its own exceptions come out as they are."""

    __slots__ = ('stream', 'failure')

    def __init__(self, stream: AsyncIterable[bytes]) -> None:
        self.stream = stream
        self.failure: Exception | None = None

    async def plain(self) -> AsyncIterator[bytes]:
        chunks = aiter(self.stream)
        try:
            async for chunk in chunks:
                yield chunk
        except Exception as error:
            self.failure = error
            raise
        finally:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()

    async def coded(self) -> AsyncIterator[bytes]:
        # Not on top of `plain`: each generator in between costs time for each chunk.
        chunks = aiter(self.stream)
        try:
            async for chunk in chunks:
                if chunk:
                    yield coded(chunk)
        except Exception as error:
            self.failure = error
            raise
        finally:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()
        yield LAST_CHUNK

    def is_cause_of(self, error: HttpError) -> bool:
        return self.failure is not None and error.__cause__ is self.failure

    def taken_failure(self) -> Exception:
        """It refers to this object by its traceback, so it is not kept here."""
        failure, self.failure = self.failure, None
        assert failure is not None
        return failure


class LowhaioStream(httpx.AsyncByteStream):
    """The body of a response, as it came. It has no wrapper for each chunk but that of errors."""

    def __init__(self, body: ResponseBody, sent: SentContent | None) -> None:
        self._body = body
        self._read = body.__anext__
        # If the response came first, its reading also sends the rest of the request.
        self._sent = sent
        self._is_over = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self._read()
        except StopAsyncIteration:
            self._is_over = True
            raise
        except HttpError as error:
            if self._sent is None or not self._sent.is_cause_of(error):
                raise translated(error) from error
        raise self._sent.taken_failure()

    async def aclose(self) -> None:
        """Close the connection, unless all that is left of the response is already here."""
        if not self._is_over:
            self._is_over = True
            await self._body.aclose()


# ----------------------------------------------------------------------------------- trace
#
# The extension `trace` is called with the names of httpcore for what the transport knows: not with
# those of connecting and sending, which go on inside lowhaio.

async def trace_response(trace: Callable[[str, Any], Awaitable[None]],
                         response: httpx.Response) -> None:
    stream = cast('LowhaioStream', response.stream)
    response.stream = TracedStream(trace, stream)
    extensions = response.extensions
    try:
        await trace('http11.receive_response_headers.complete', {'return_value': (
            extensions['http_version'], response.status_code, extensions['reason_phrase'],
            response.headers.raw)})
    except BaseException:
        await stream.aclose()
        raise


class TracedStream(httpx.AsyncByteStream):
    """A stream that tells of its beginning and of its end."""

    def __init__(self, trace: Callable[[str, Any], Awaitable[None]], stream: LowhaioStream,
                 ) -> None:
        self._trace = trace
        self._stream = stream
        self._is_closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        await self._trace('http11.receive_response_body.started', {})
        try:
            async for chunk in self._stream:
                yield chunk
        except BaseException as error:
            await self._trace('http11.receive_response_body.failed', {'exception': error})
            raise
        await self._trace('http11.receive_response_body.complete', {'return_value': None})

    async def aclose(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            await self._trace('http11.response_closed.started', {})
            await self._stream.aclose()
            await self._trace('http11.response_closed.complete', {'return_value': None})


# ------------------------------------------------------------------------------- after 101

class NetworkStream:
    """The extension `network_stream`: what is known of a connection, and both ways after 101.

    It raises the exceptions of httpcore, as the one of the stock transport does.
    """

    __slots__ = ('_body', '_is_switched', '_left')

    def __init__(self, body: ResponseBody, is_switched: bool) -> None:
        self._body = body
        self._is_switched = is_switched
        # What has been read and was not asked for yet.
        self._left = b''

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return what has come, or comes within `timeout` seconds: no bytes at its end."""
        import httpcore

        if not self._left:
            try:
                if not self._is_switched:
                    raise HttpError('only after 101 Switching Protocols can more be read')
                async with asyncio.timeout(timeout):
                    self._left = await anext(self._body)
            except StopAsyncIteration:
                return b''
            except TimeoutError as error:
                raise httpcore.ReadTimeout(f'{timeout} seconds passed') from error
            except HttpError as error:
                raise httpcore.ReadError(str(error)) from error
        data, self._left = self._left[:max_bytes], self._left[max_bytes:]
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of it within `timeout` seconds. Once that has failed, no more can be sent."""
        import httpcore

        try:
            async with asyncio.timeout(timeout):
                await self._body.send(buffer)
        except TimeoutError as error:
            raise httpcore.WriteTimeout(f'{timeout} seconds passed') from error
        except HttpError as error:
            raise httpcore.WriteError(str(error)) from error

    async def aclose(self) -> None:
        """Close the connection."""
        await self._body.aclose()

    async def start_tls(self, ssl_context: ssl.SSLContext, server_hostname: str | None = None,
                        timeout: float | None = None) -> NoReturn:
        """Raise: TLS can not be added to a connection of lowhaio."""
        raise NotImplementedError('lowhaio can not add TLS to a connection: use an https or wss '
                                  'URL')

    def get_extra_info(self, info: str) -> Any:
        """Return `'server_addr'`, `'client_addr'` or `'ssl_object'`. None for anything else."""
        facts = self._body.connection
        if info == 'server_addr':
            return facts.peer
        if info == 'client_addr':
            return facts.local
        if info == 'ssl_object' and facts.tls_version is not None:
            return TlsFacts(facts)
        return None


class TlsFacts:
    """What an `ssl.SSLObject` tells. It can still be asked after the connection has closed."""

    def __init__(self, facts: ConnectionFacts) -> None:
        self._facts = facts

    def version(self) -> str | None:
        """Return such as `'TLSv1.3'`."""
        return self._facts.tls_version

    def cipher(self) -> tuple[str, str, int] | None:
        """Return its name, the version of TLS that has defined it, and its secret bits."""
        return self._facts.cipher

    def getpeercert(self, binary_form: bool = False) -> bytes | None:
        """Return the certificate of the peer in DER form."""
        if not binary_form:
            raise NotImplementedError('lowhaio keeps the certificate as it came: ask for it with '
                                      'getpeercert(binary_form=True)')
        return self._facts.certificate


# ---------------------------------------------------------------------------------- errors

CONNECTING = frozenset(('name', 'connect', 'tls'))
TIMEOUTS: dict[str, type[httpx.TimeoutException]] = {
    'name': httpx.ConnectTimeout, 'connect': httpx.ConnectTimeout, 'tls': httpx.ConnectTimeout,
    'pool': httpx.PoolTimeout, 'send': httpx.WriteTimeout, 'body': httpx.WriteTimeout,
}
# The peer has ended the connection in an orderly way, but too early.
ENDED = (EOFError, ssl.SSLEOFError, ssl.SSLZeroReturnError)


def translated(error: HttpError) -> httpx.TransportError:
    """The exception of httpx for one of lowhaio, by its phase and its cause."""
    phase, cause = error.phase, error.__cause__
    kind: type[httpx.TransportError] = httpx.RemoteProtocolError
    if is_proxy_error(error):
        kind = httpx.ProxyError
    elif isinstance(cause, TimeoutError):
        kind = TIMEOUTS.get(phase, httpx.ReadTimeout)
    elif phase in ('refused', 'body') or isinstance(cause, RuntimeError):
        kind = httpx.LocalProtocolError
    elif phase in CONNECTING or phase == 'pool':
        kind = httpx.ConnectError
    elif isinstance(cause, OSError) and not isinstance(cause, ENDED):
        kind = httpx.WriteError if phase == 'send' else httpx.ReadError
    return kind(str(error))


def is_proxy_error(error: HttpError) -> bool:
    return isinstance(error.__cause__, httpx.ProxyError)


# ------------------------------------------------------------------------ sockets, proxies
#
# Each of these makes connected sockets for the pool. That counts as connecting, so its time is
# that of the request, and whatever they raise is the cause of an HttpConnectionError. None of them
# makes TLS with a server: lowhaio does, on the socket that it is given.

class SocketMaker:
    """Makes non-blocking sockets, with the options and the local address of the transport."""

    def __init__(self, local_address: str | None, options: Iterable[SocketOption] | None) -> None:
        self.local_address = local_address
        self.options = tuple(options or ())

    def __call__(self, family: int) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if family != AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option in self.options:
                sock.setsockopt(*option)
            if self.local_address is not None:
                sock.bind((self.local_address, 0))
        except BaseException:
            sock.close()
            raise
        return sock

    async def connected(self, host: str, port: int) -> socket.socket:
        """Connect to the first address of a host that accepts."""
        loop = get_running_loop()
        found: list[tuple[int, Any]] = [
            (socket.AF_INET6 if ':' in host else socket.AF_INET, (host, port))]
        if not is_address(host):
            infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found = [(family, address) for family, _, _, _, address in infos]
        failures = []
        for family, address in found:
            try:
                return await self.connected_to(family, address)
            except OSError as error:
                failures.append(error)
        raise failures[-1]

    async def connected_to(self, family: int, address: Any) -> socket.socket:
        sock = self(family)
        try:
            await get_running_loop().sock_connect(sock, address)
        except BaseException:
            sock.close()
            raise
        return sock


AF_UNIX = getattr(socket, 'AF_UNIX', None)


def connector_by(proxy: httpx.Proxy, make_socket: SocketMaker,
                 ) -> Callable[[str, str, int], Coroutine[Any, Any, socket.socket]]:
    scheme = proxy.url.scheme
    if scheme == 'https':
        raise ValueError('the proxy must be reached without TLS, by an http:// or socks5:// URL: '
                         'lowhaio can not make TLS inside TLS')
    if proxy.ssl_context is not None:
        raise ValueError(f'the proxy must have no ssl_context, because its URL is {scheme}://')
    return (HttpProxy if scheme == 'http' else SocksProxy)(proxy, make_socket)


class UnixConnector:
    """Connects to a Unix socket, whatever the URL."""

    def __init__(self, path: str, make_socket: SocketMaker) -> None:
        self.path = path
        self.make_socket = make_socket

    async def __call__(self, scheme: str, host: str, port: int) -> socket.socket:
        assert AF_UNIX is not None
        return await self.make_socket.connected_to(AF_UNIX, self.path)


class ProxyConnector(ABC):
    """Connects to a proxy, and lets it connect to the server."""

    default_port = 0

    def __init__(self, proxy: httpx.Proxy, make_socket: SocketMaker) -> None:
        self.proxy = proxy
        self.make_socket = make_socket
        self.auth = proxy.raw_auth

    async def __call__(self, scheme: str, host: str, port: int) -> socket.socket:
        url = self.proxy.url
        sock = await self.make_socket.connected(url.host, url.port or self.default_port)
        try:
            await self.open(sock, scheme, host, port)
        except BaseException:
            sock.close()
            raise
        return sock

    @abstractmethod
    async def open(self, sock: socket.socket, scheme: str, host: str, port: int) -> None:
        """Let the proxy that the socket leads to connect to the server."""


class HttpProxy(ProxyConnector):
    """Opens tunnels by CONNECT (RFC 9110 9.3.6), but is sent the requests for http itself."""

    default_port = 80

    def __init__(self, proxy: httpx.Proxy, make_socket: SocketMaker) -> None:
        super().__init__(proxy, make_socket)
        netloc = proxy.url.netloc.decode()
        self.origin = f'http://{netloc}/'
        self.own = canonical_host(re.sub(':[0-9]*$', '', netloc)), proxy.url.port or 80
        self.fields = proxy.headers.raw
        if self.auth is not None:
            secret = b64encode(b':'.join(self.auth))
            self.fields = [(b'Proxy-Authorization', b'Basic ' + secret), *self.fields]

    def forwarded(self, url: httpx.URL, target: bytes, fields: list[tuple[bytes, bytes]],
                  ) -> tuple[str, bytes, list[tuple[bytes, bytes]]]:
        """The origin, the target and the fields of a request that goes to the proxy itself."""
        if target.startswith(b'/'):  # RFC 9112 3.2.2
            target = b'%b://%b%b' % (url.raw_scheme, url.netloc, target)
        # Without a field of its own, lowhaio would send the host of the proxy.
        return self.origin, target, merged(fields, [*self.fields, (b'Host', url.netloc)])

    async def open(self, sock: socket.socket, scheme: str, host: str, port: int) -> None:
        if scheme == 'http' and (host, port) == self.own:
            return
        loop = get_running_loop()
        target = (f'[{host}]:{port}' if ':' in host else f'{host}:{port}').encode()
        fields = merged(self.fields, [(b'Host', target), (b'Accept', b'*/*')])
        await loop.sock_sendall(sock, b'CONNECT %b HTTP/1.1\r\n%b\r\n' % (
            target, b''.join(b'%b: %b\r\n' % field for field in fields)))
        status = await read_status(loop, sock)
        if not status.startswith(b'2'):
            # Such as "407 Proxy Authentication Required".
            raise httpx.ProxyError(status.decode('ascii', 'replace'))


def merged(fields: list[tuple[bytes, bytes]], more: list[tuple[bytes, bytes]],
           ) -> list[tuple[bytes, bytes]]:
    """All of `fields`, and those of `more` that are of other names."""
    names = {name.lower() for name, _ in fields}
    return [*fields, *(field for field in more if field[0].lower() not in names)]


STATUS_LINE = re.compile(rb'HTTP/1\.[0-9] ([0-9]{3}(?: [^\r\n]*)?)\r?\n')


async def read_status(loop: AbstractEventLoop, sock: socket.socket) -> bytes:
    """Read what the proxy answers to a CONNECT, and return its status code and its reason."""
    head = b''
    while True:
        end = re.search(rb'\r?\n\r?\n', head)
        if end is None:
            data = await loop.sock_recv(sock, MAX_PROXY_HEAD)
            head += data
            if not data or len(head) > MAX_PROXY_HEAD:
                raise httpx.ProxyError(f'the proxy answered {head[:60]!r}')
            continue
        status = STATUS_LINE.match(head)
        if status is None:
            raise httpx.ProxyError(f'the proxy answered {head[:60]!r}')
        if not status[1].startswith(b'1'):
            break
        # RFC 9110 15.2: an interim response.
        head = head[end.end():]
    if status[1].startswith(b'2') and end.end() < len(head):
        # A server of TLS waits for the client.
        raise httpx.ProxyError(f'the proxy sent {head[end.end():][:60]!r} before the server')
    return status[1].rstrip()


class SocksProxy(ProxyConnector):
    """Opens tunnels by SOCKS5 (RFC 1928, and RFC 1929 for a password). It looks up the names."""

    default_port = 1080

    def __init__(self, proxy: httpx.Proxy, make_socket: SocketMaker) -> None:
        super().__init__(proxy, make_socket)
        if self.auth is not None and not all(len(part) < 256 for part in self.auth):
            raise ValueError('the name and the password for a SOCKS5 proxy must have at most 255 '
                             'bytes each')

    async def open(self, sock: socket.socket, scheme: str, host: str, port: int) -> None:
        loop = get_running_loop()
        await loop.sock_sendall(sock, b'\x05\x01\x00' if self.auth is None else
                                b'\x05\x02\x00\x02')
        version, method = await receive(loop, sock, 2)
        if version != 5:
            raise httpx.ProxyError('the proxy does not speak SOCKS5')
        if method == 2 and self.auth is not None:
            name, password = self.auth
            await loop.sock_sendall(sock, b'\x01%c%b%c%b' % (
                len(name), name, len(password), password))
            _, refusal = await receive(loop, sock, 2)
            if refusal:
                raise httpx.ProxyError('the SOCKS5 proxy refused the name or the password')
        elif method != 0:
            raise httpx.ProxyError('the SOCKS5 proxy wants a name and a password' if
                                    self.auth is None else 'the SOCKS5 proxy wants another '
                                    'authentication than a name and a password')
        await loop.sock_sendall(sock, b'\x05\x01\x00%b%b' % (
            socks_address(host), port.to_bytes(2, 'big')))
        _, reply, _, kind = await receive(loop, sock, 4)
        if reply:
            raise httpx.ProxyError('the SOCKS5 proxy could not connect: '
                                    f'{SOCKS_REPLIES.get(reply, f"reply {reply}")}')
        # The address of its own end. A name has its length before it.
        length = {1: 4, 4: 16}.get(kind) or (await receive(loop, sock, 1))[0]
        await receive(loop, sock, length + 2)


SOCKS_REPLIES = {
    1: 'general failure', 2: 'not allowed by its rules', 3: 'network unreachable',
    4: 'host unreachable', 5: 'connection refused', 6: 'TTL expired', 7: 'command not supported',
    8: 'address type not supported',
}


def socks_address(host: str) -> bytes:
    if is_address(host):
        packed = ip_address(host).packed
        return (b'\x01' if len(packed) == 4 else b'\x04') + packed
    name = host.encode('ascii')
    return b'\x03%c%b' % (len(name), name)


async def receive(loop: AbstractEventLoop, sock: socket.socket, count: int) -> bytes:
    """Not a byte more: what follows comes from the server."""
    data = b''
    while len(data) < count:
        more = await loop.sock_recv(sock, count - len(data))
        if not more:
            raise httpx.ProxyError('the SOCKS5 proxy closed the connection')
        data += more
    return data
