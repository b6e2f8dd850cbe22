"""A session: the comfort of a whole HTTP client, over a pool of lowhaio and its layers.

::

    async with Session('https://example.com/api', auth=('user', 'password')) as http:
        response = await http.get('/items', params={'page': 2})
        print(response.status, await response.json())

A `Session` stacks the layers, and turns what people have (str, dictionaries, files) into what a
`request` takes. A `SessionResponse` does the reverse, when it is asked. `compose` is what stacks.
The one layer that is here, `reading`, reads whole bodies inside of the retries, so that one that
was cut off is asked for again. So there are two stacks over one pool: one reads, one streams.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import json as json_module
import math
import os
import re
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, TypedDict, Unpack, cast

import lowhaio
from lowhaio import (
    Body,
    Fields,
    HttpDataError,
    HttpError,
    Params,
    Phase,
    Request,
    ResponseBody,
    Timeouts,
    buffered,
    empty_async_iterator,
    encode_params,
    streamed,
)
from lowhaio_auth import basic, bearer
from lowhaio_chunked import chunked
from lowhaio_compression import decompressed
from lowhaio_form import Data, File, Files, form, multipart, sized
from lowhaio_redirect import HARMLESS, Hop, hops, redirectable
from lowhaio_retry import retry

if TYPE_CHECKING:
    from http.cookiejar import CookieJar

__all__ = ['ResponseHeaders', 'Session', 'SessionResponse', 'StatusError', 'compose']

# What a pool is made with, unless the session is given something else.
POOL_DEFAULTS = {'max_connections': 100, 'pool_timeout': 10}
LIMITS = ('max_connections', 'max_connections_per_origin', 'max_idle_connections',
          'max_requests_per_connection', 'pool_timeout', 'keep_alive_timeout')
# Sent unless headers of this name are given. Some services refuse requests without one.
USER_AGENT = (b'user-agent', b'lowhaio/' + lowhaio.__version__.encode())

# Bytes of the content that are in a `StatusError`, and those that its message shows.
MAX_CONTENT = 1000
MAX_SHOWN = 200
# Seconds between two attempts, at most.
MAX_WAIT = 30

Layer = Callable[[Any], Any]
AnyRequest = Callable[..., Awaitable[tuple[bytes, Fields, Any]]]
RequestHeaders = Mapping[str, str | Sequence[str]] | Iterable[tuple[str | bytes, str | bytes]]
Content = str | File | AsyncIterable[bytes] | Callable[[], AsyncIterator[bytes]]
Timeout = float | Timeouts
Limits = int | Mapping[str, float | None]
Made = Coroutine[Any, Any, 'SessionResponse']


class Options(TypedDict, total=False):
    """The keywords of each method of a `Session`. `Session.request` tells what they are."""

    params: Params
    headers: RequestHeaders | None
    json: Any
    data: Data | None
    files: Files | None
    content: Content | None
    timeout: Timeout | None


# --------------------------------------------------------------------------------- stacking

A = TypeVar('A')


# Overloads for layers that change the type would be ambiguous to mypy, which takes Any then: there
# is an Any in the type of each layer.
def compose(request: A, /, *layers: Callable[[A], A]) -> A:
    """Put layers around a `request`. The first one that is named is the outermost.

    `compose(request, redirectable, retry)` is `redirectable(retry(request))`. A layer with options
    is a `functools.partial(retry, jitter=1)`. What is no function raises TypeError.
    """
    for function in (request, *layers):
        if not callable(function):
            raise TypeError(f'compose needs a request and layers, got {type(function).__name__}')
    for layer in reversed(layers):
        request = layer(request)
    return request


# ---------------------------------------------------------------------------------- session

class Session:
    """Makes requests with the defaults of a service: its URL, headers, credentials and limits.

    - `base_url`: where paths are added to. Absolute URLs of other origins can be used as well.
    - `headers`: sent with each request, unless it has its own of that name. Those that may tell
      who asks go to the origin of `base_url` only: all but `lowhaio_redirect.HARMLESS`.
    - `auth`: a pair of user name and password, or a bearer token, or a function that returns one
      and may be a coroutine function. It goes to the origin of `base_url` only.
    - `timeout`: seconds for all of a request, its retries and redirects included, or a mapping of
      `'total'`, `'connect'`, `'read'`, `'write'` and `'pool'` to seconds. None is for never.
    - `limits`: how many connections there may be, 100 unless it is given, or a mapping of those
      options of `lowhaio.Pool` that limit them: `max_connections`, `max_connections_per_origin`,
      `max_idle_connections`, `max_requests_per_connection`, `keep_alive_timeout`, and
      `pool_timeout`, which is 10 seconds unless it is given.
    - `retries`: how often a request is made again, if that can do no harm: at once, and after 0.5,
      1, 2 and more seconds. Or a layer, such as `partial(retry, jitter=1)`.
    - `redirects`: how many in a row are followed. Or a layer, as `partial(redirectable, keep=…)`.
    - `cookies`: True, or a `CookieJar`, to keep and to send them. This needs lowhaio-cookies.
    - `decompress`: whether compressed content is asked for, and decompressed.
    - `layers`: your own, inside of the retries and redirects. The first is the outermost.
    - `request`: used in place of a pool. The session does not close it.
    - `pool_options`: all others of `lowhaio.Pool`, such as `on_event`.

    Arguments that make no sense raise TypeError or ValueError at once.
    """

    __slots__ = ('low_level', '_close', '_base', '_origin', '_headers', '_harmless', '_times',
                 '_whole')

    low_level: Request
    """The `request` of the pool with all the layers around it. It knows no `base_url`, `headers`
    and `timeout`, and returns as soon as the head of a response is here."""

    def __init__(
            self, base_url: str | None = None, *, headers: RequestHeaders = (),
            auth: tuple[str, str] | str | Callable[[], str | Awaitable[str]] | None = None,
            timeout: Timeout | None = None, limits: Limits | None = None,
            retries: int | Layer = 3, redirects: int | Layer = 20,
            cookies: bool | CookieJar = False, decompress: bool = True,
            layers: Iterable[Layer] = (), request: AnyRequest | None = None,
            **pool_options: Any) -> None:
        self._base, self._origin = checked_base(base_url)
        own = pairs_of(headers)
        self._headers = own if has(own, USER_AGENT[0]) else (USER_AGENT, *own)
        self._harmless = tuple(pair for pair in self._headers if pair[0].lower() in HARMLESS)
        if self._origin is None and (auth is not None or self._harmless != self._headers):
            raise ValueError('auth, and headers that may tell who asks, need a base_url: they '
                             'are for its origin only')
        self._times = times_of(timeout, (None, None))
        self._close = nothing
        given = with_limits(pool_options, limits)
        if request is None:
            request, self._close = lowhaio.Pool(**{**POOL_DEFAULTS, **given})
        elif given:
            raise TypeError(f'request and {", ".join(given)} are both given: options are '
                            'for the pool that a session makes itself')
        inner = compose(
            request,
            *[] if auth is None or self._origin is None else [authorizing(auth, self._origin)],
            *layers,
            *[] if cookies is False else [keeping(cookies)])
        # Two stacks, since to pass a keyword on through all of one would cost more than all else
        # that its layers do.
        self.low_level, self._whole = (cast(Request, compose(
            reading(inner, is_whole),
            *[decompressed] if decompress else [],
            *layers_of('redirects', redirects, following),
            *layers_of('retries', retries, retrying))) for is_whole in (False, True))

    def __repr__(self) -> str:
        return f'<Session {self._origin or "without base_url"}>'

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections: idle ones at once, and those in use when their responses end."""
        await self._close()

    def get(self, url: str, **options: Unpack[Options]) -> Made:
        # Most requests are such ones, and a call with ** takes longer.
        return self.request('GET', url, **options) if options else self.request('GET', url)

    def head(self, url: str, **options: Unpack[Options]) -> Made:
        return self.request('HEAD', url, **options)

    def options(self, url: str, **options: Unpack[Options]) -> Made:
        return self.request('OPTIONS', url, **options)

    def post(self, url: str, **options: Unpack[Options]) -> Made:
        return self.request('POST', url, **options)

    def put(self, url: str, **options: Unpack[Options]) -> Made:
        return self.request('PUT', url, **options)

    def patch(self, url: str, **options: Unpack[Options]) -> Made:
        return self.request('PATCH', url, **options)

    def delete(self, url: str, **options: Unpack[Options]) -> Made:
        return self.request('DELETE', url, **options)

    def request(self, method: str, url: str, *, params: Params = (),
                headers: RequestHeaders | None = None, json: Any = None,
                data: Data | None = None, files: Files | None = None,
                content: Content | None = None, timeout: Timeout | None = None,
                is_whole: bool = True) -> Made:
        """Make a request and read all of its response. To be awaited.

        - `method`: such as `'GET'`, in any case.
        - `url`: a path, which is added to the base URL, or an absolute URL.
        - `params`: added to the URL's query, as for `urllib.parse.urlencode(params, doseq=True)`.
        - `headers`: a mapping of str, or pairs of str or bytes.
        - `json`: sent as JSON. None is for no body.
        - `data`: a mapping or pairs of str, sent as a form. The items of a list are fields each.
        - `files`: a mapping or pairs of names and files, sent as a form together with `data`. A
          file is bytes, a seekable binary file, a `Path`, or `(file name, file, content type)`, of
          which the last may be left out. A list is several.
        - `content`: str, a file, an async iterable of bytes, or a function that returns one.
        - `timeout`: this request's own. What a mapping does not have is as the session says.
        - `is_whole`: if False, the content is not read. Read it, or close `response.body`.

        Raises an `HttpError` if there is no whole response, and TypeError or ValueError for
        arguments that make no sense. No status code raises anything.
        """
        verb = VERBS.get(method) or as_bytes(method.upper())
        full_url, fields = self._addressed(url)
        own = pairs_of(headers) if headers else ()
        body: Body = empty_async_iterator
        if json is not None or data is not None or files is not None or content is not None:
            body, described = body_of(own, json, data, files, content)
            own = with_defaults(own, described)
        elif verb in WITH_CONTENT:
            own = with_defaults(own, NO_CONTENT)
        total, timeouts = self._times if timeout is None else times_of(timeout, self._times)
        request = self._whole if is_whole else self.low_level
        own = with_defaults(own, fields) if own else fields
        keywords = {} if timeouts is None else {'timeouts': timeouts}
        if total is None:
            return responded(request, is_whole, verb, full_url, params, own, body, keywords)
        return in_time(total, request, is_whole, verb, full_url, params, own, body, keywords)

    def stream(self, method: str, url: str, **options: Unpack[Options]) -> Streaming:
        """Make a request whose response is read in an `async with` block.

        What is left of it at the end of the block is closed. A total timeout is for what comes
        before the block. See `request`.
        """
        return Streaming(self.request(method, url, is_whole=False, **options))

    def _addressed(self, url: str) -> tuple[str, Fields]:
        """The absolute URL of a request, and the headers of the session that go there."""
        if not isinstance(url, str):
            raise TypeError(f'url must be a str, got {type(url).__name__}')
        if self._origin is None:
            return url, self._headers
        if '://' not in url or ABSOLUTE.match(url) is None:
            # A path stays a path: it is never resolved, so it can not name another host.
            return self._base + (url if url[:1] in '/?' else '/' + url), self._headers
        return url, self._headers if origin_of(url) == self._origin else self._harmless


VERBS = {verb: verb.encode() for verb in (
    'GET', 'HEAD', 'OPTIONS', 'POST', 'PUT', 'PATCH', 'DELETE')}
# The methods that are meant to have content. Without it they tell that it is empty (RFC 9110 8.6).
WITH_CONTENT = frozenset((b'POST', b'PUT', b'PATCH'))
NO_CONTENT = ((b'content-length', b'0'),)
ABSOLUTE = re.compile(r'[A-Za-z][A-Za-z0-9+.\-]*://')
ORIGIN = re.compile(r'(https?)://([^/?#]*)', re.IGNORECASE | re.ASCII)
DEFAULT_PORTS = {'http': ':80', 'https': ':443'}
KINDS = ('total', 'connect', 'read', 'write', 'pool')


def checked_base(url: str | None) -> tuple[str, str | None]:
    """A base URL without a slash at its end, and its origin."""
    if url is None:
        return '', None
    origin = origin_of(url) if isinstance(url, str) else None
    if origin is None or '@' in origin or re.search('[?#]', url):
        # What came is not shown, since it may have a password.
        raise ValueError('base_url must begin with http:// or https:// and a host, and have no '
                         'user, query and fragment')
    return url.removesuffix('/'), origin


def origin_of(url: str) -> str | None:
    """A URL's scheme and authority, alike for those of one origin that differ in case or port.

    Two spellings of one host that differ in more count as two, which is on the safe side.
    """
    match = ORIGIN.match(url)
    if match is None or not match[2]:
        return None
    scheme, authority = match[1].lower(), match[2]
    return f'{scheme}://' + (authority.lower() if authority.isascii() else authority).removesuffix(
        DEFAULT_PORTS[scheme])


def with_limits(options: dict[str, Any], limits: Any) -> dict[str, Any]:
    """The options of a pool, and among them these limits."""
    found = {} if limits is None else limits
    if not isinstance(found, Mapping):
        found = {'max_connections': limits}
    if isinstance(limits, (str, bytes)) or not found.keys() <= set(LIMITS):
        raise ValueError(f'limits must be a number of connections, or a mapping of '
                         f'{", ".join(LIMITS)} to numbers or None, got {limits!r}')
    if twice := [name for name in found if name in options]:
        raise TypeError(f'{", ".join(twice)} is given twice: in limits, and as an option')
    return {**options, **found}


async def nothing() -> None:
    """Close a request that is not the session's own."""


def layers_of(name: str, value: int | Layer, make: Callable[[int], Layer]) -> list[Layer]:
    """The layer of an option that is a number, or that layer itself. There is none for 0."""
    if callable(value):
        return [value]
    if not isinstance(value, int) or value < 0:
        raise ValueError(f'{name} must be a number, 0 or more, or a layer, got {value!r}')
    return [make(value)] if value else []


def following(number: int) -> Layer:
    return partial(redirectable, max_redirects=number)


def retrying(number: int) -> Layer:
    # With larger powers, a float would soon be too small.
    waits = (0, *(min(2 ** min(each, 9) / 2, MAX_WAIT) for each in range(number - 1)))
    return partial(retry, exception_intervals=((HttpError, waits),))


def authorizing(auth: Any, origin: str) -> Layer:
    if isinstance(auth, str):
        return partial(bearer, get_token=lambda: auth, origin=origin)
    if callable(auth):
        return partial(bearer, get_token=cast(Any, auth), origin=origin)
    if isinstance(auth, tuple) and len(auth) == 2:
        return partial(basic, username=auth[0], password=auth[1], origin=origin)
    raise TypeError('auth must be a pair of user name and password, a token, or a function that '
                    f'returns one, got {type(auth).__name__}')


def keeping(cookies: Any) -> Layer:
    # Imported here because it takes longer than all the rest, and most sessions have no cookies.
    from http.cookiejar import CookieJar

    from lowhaio_cookies import with_cookies
    return partial(with_cookies, jar=CookieJar() if cookies is True else cookies)


def times_of(timeout: Any, default: tuple[float | None, Timeouts | None],
             ) -> tuple[float | None, Timeouts | None]:
    """The total in seconds, and the `timeouts` of a request. The default has what is missing."""
    if timeout is None:
        return default
    given = dict(timeout) if isinstance(timeout, Mapping) else {'total': timeout}
    for kind, seconds in given.items():
        is_time = isinstance(seconds, (int, float)) and 0 < seconds < math.inf
        if kind not in KINDS or not (is_time or seconds is None):
            raise ValueError(f'timeout must be seconds, more than 0, or a mapping of '
                             f'{", ".join(KINDS)} to seconds or None, got {timeout!r}')
    total = given.pop('total', default[0])
    return total, {**(default[1] or {}), **given} or None


# ------------------------------------------------------------------------------ an exchange
#
# One request is in three places: `in_time` bounds all of it, `responded` makes a response of what
# came through the layers, and `reading` is inside of the retries and sees each attempt.

class Note:
    """What became of the attempts of a request that has a total timeout."""

    __slots__ = ('last', 'response_started')

    def __init__(self) -> None:
        self.last: HttpError | None = None
        self.response_started = False

    def failure(self, where: str, total: float) -> HttpDataError:
        """The error of a request that ran out of time."""
        error = HttpDataError(f'{where}: timeout, {total:g} seconds, passed' + (
            '' if self.last is None else f' (the last failure: {self.last})'))
        error.response_started = self.response_started
        error.phase = '' if self.last is None else self.last.phase
        return error

    def cause(self, total: float, cause: BaseException) -> TimeoutError:
        late = TimeoutError(f'timeout, {total:g} seconds, passed')
        late.__cause__ = self.last or cause
        return late


async def in_time(total: float, request: Request, is_whole: bool, method: bytes, url: str,
                  params: Params, headers: Fields, body: Body, keywords: dict[str, Any],
                  ) -> SessionResponse:
    """The response, or an `HttpDataError` after `total` seconds, which tells what failed last.

    Like the others, that error has a TimeoutError as its cause. The cause of that is what failed.
    """
    note = Note()
    scope = asyncio.timeout(total)
    try:
        async with scope:
            return await responded(request, is_whole, method, url, params, headers, body,
                                   {**keywords, 'note': note})
    except TimeoutError as cause:
        if not scope.expired():
            raise
        raise note.failure(f'{method.decode()} {origin_of(url) or ""}', total) from note.cause(
            total, cause)
    finally:
        # The exception refers to this frame, and the frame to it.
        note.last = None


# A call with ** takes longer than all else that is done here, so it is made only where it must.

async def responded(request: Request, is_whole: bool, method: bytes, url: str, params: Params,
                    headers: Fields, body: Body, keywords: dict[str, Any]) -> SessionResponse:
    code, fields, received = await (
        request(method, url, params=params, headers=headers, body=body, **keywords)
        if keywords else request(method, url, params=params, headers=headers, body=body))
    content = None
    if is_whole:
        content = received.chunks.pop() if type(received) is HeldBody else await buffered(received)
    elif code >= b'400':
        # Read here, because `raise_for_status` shows it, and awaits nothing.
        received = await begun(received)
    return SessionResponse(code, fields, received, content, method, url, params)


def reading(request: AnyRequest, is_whole: bool) -> AnyRequest:
    """A `request` that also reads the content if `is_whole`, unless that is of a redirect.

    It is inside of the retries. So one whose content is cut off is retried like any other.
    """
    async def reading_request(
            method: bytes, url: str, params: Any = (), headers: Any = (),
            body: Any = empty_async_iterator, body_args: Any = (), body_kwargs: Any = (),
            note: Note | None = None, **kwargs: Any) -> Any:
        try:
            response = await (request(
                method, url, params=params, headers=headers, body=body, body_args=body_args,
                body_kwargs=body_kwargs, **kwargs,
            ) if kwargs else request(
                method, url, params=params, headers=headers, body=body, body_args=body_args,
                body_kwargs=body_kwargs))
            if note is not None:
                note.response_started = True
            code, fields, received = response
            if is_whole and not code.startswith(b'3'):
                return code, fields, HeldBody([await buffered(received)], received)
            return response
        except HttpError as error:
            if note is not None:
                note.last = error
                note.response_started |= error.response_started
            raise

    return reading_request


async def begun(body: Any) -> HeldBody:
    """The body, after its beginning has been read. A failure is for whoever reads on."""
    chunks: list[bytes] = []
    try:
        with contextlib.suppress(HttpError):
            async for chunk in body:
                chunks.append(chunk)
                if sum(map(len, chunks)) >= MAX_CONTENT:
                    break
    except BaseException:
        await body.aclose()
        raise
    return HeldBody(chunks, body)


class HeldBody:
    """A response body of which the beginning, or all, has been read.

    It passes on all other attributes of the body that it reads from.
    """

    __slots__ = ('chunks', '_body', '_is_cut', '__weakref__')

    def __init__(self, chunks: list[bytes], body: Any) -> None:
        # What has been read, and not handed out yet.
        self.chunks = chunks
        self._body = body
        self._is_cut = False

    def __repr__(self) -> str:
        return f'<HeldBody {len(self.content())} bytes held of {self._body!r}>'

    def content(self) -> bytes:
        """What is held."""
        return b''.join(self.chunks)

    def __aiter__(self) -> HeldBody:
        return self

    async def __anext__(self) -> bytes:
        if self._is_cut:
            raise closed_early()
        while self.chunks:
            if chunk := self.chunks.pop(0):
                return chunk
        return bytes(await anext(self._body))

    async def aclose(self) -> None:
        """Close the connection, unless the whole response has arrived.

        If some of the body has not been taken yet, reading on raises an `HttpDataError`.
        """
        self._is_cut = self._is_cut or bool(self.chunks)
        self.chunks = []
        await self._body.aclose()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)


def closed_early() -> HttpDataError:
    cause = ConnectionAbortedError('the response body was closed before its end')
    error = HttpDataError(f'reading the response body: {cause}')
    error.response_started, error.phase, error.__cause__ = True, Phase.CONTENT, cause
    return error


# -------------------------------------------------------------------------------- responses

class StatusError(Exception):
    """There was a response, but its status code is 400 or above. It is no `HttpError`."""

    def __init__(self, message: str, response: SessionResponse, content: bytes) -> None:
        super().__init__(message)
        self.response = response
        """The response. With `stream`, it is of use only in the block."""
        self.status: int = response.status
        """The status code."""
        self.content = content
        """The first 1000 bytes of the content, if there are so many."""


class ResponseHeaders(Mapping[str, str]):
    """The fields of a response, by their names in any case.

    The values of a repeated field are joined by commas, which is what repeated fields mean (RFC
    9110 5.3). `set-cookie` is the exception: its values have commas, so take `get_all`.
    """

    __slots__ = ('_fields', '_values')

    def __init__(self, fields: Fields) -> None:
        self._fields = fields
        self._values: dict[str, list[str]] = {}
        for name, value in self.pairs():
            self._values.setdefault(name, []).append(value)

    def __repr__(self) -> str:
        return f'<ResponseHeaders {", ".join(self)}>'

    def __getitem__(self, name: str) -> str:
        return ', '.join(self._values[name.lower()])

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def get_all(self, name: str) -> list[str]:
        """The values of all fields of this name, in their order."""
        return list(self._values.get(name.lower(), ()))

    def pairs(self) -> Iterator[tuple[str, str]]:
        """All fields in their order, with repeated ones, as pairs of lower-case name and value."""
        return ((name.decode('latin-1'), value.decode('latin-1')) for name, value in self._fields)


class Streaming:
    """What `Session.stream` returns.

    It is no async generator: the event loop would close one that is dropped, in a task.
    """

    __slots__ = ('_made', '_response')

    def __init__(self, made: Made) -> None:
        self._made = made

    async def __aenter__(self) -> SessionResponse:
        self._response = await self._made
        return self._response

    async def __aexit__(self, *error: object) -> None:
        await self._response.body.aclose()


class SessionResponse:
    """A response. Its content has been read, unless it comes from `Session.stream`."""

    __slots__ = ('code', 'fields', 'body', '_content', '_method', '_url', '_params', '_headers')

    def __init__(self, code: bytes, fields: Fields, body: Any, content: bytes | None,
                 method: bytes, url: str, params: Params) -> None:
        self.code = code
        """The status code as lowhaio has it: three digits, as bytes."""
        self.fields = fields
        """The header fields as lowhaio has them: pairs of bytes."""
        self.body: ResponseBody = body
        """The body of lowhaio: `trailers`, `reason`, `http_version`, `connection`, `aclose`…"""
        self._content = content
        self._method = method
        self._url = url
        self._params = params
        self._headers: ResponseHeaders | None = None

    def __repr__(self) -> str:
        return f'<SessionResponse {self.status}>'

    @property
    def status(self) -> int:
        """The status code."""
        return int(self.code)

    @property
    def headers(self) -> ResponseHeaders:
        """The header fields, as a mapping."""
        if self._headers is None:
            self._headers = ResponseHeaders(self.fields)
        return self._headers

    @property
    def history(self) -> tuple[Hop, ...]:
        """The redirects that led here, each with its `code`, and the `url` it led to."""
        return hops(self.body)

    @property
    def url(self) -> str:
        """The absolute URL that this is the response of, after redirects."""
        if history := self.history:
            return history[-1].url
        url, mark, fragment = self._url.partition('#')
        query = encode_params(self._params) if self._params else ''
        return url + (('&' if '?' in url else '?') + query if query else '') + mark + fragment

    def __aiter__(self) -> AsyncIterator[bytes]:
        """The content, chunk by chunk. In `stream`, it can be read once."""
        return self.body if self._content is None else HeldBody([self._content], self.body)

    async def bytes(self) -> bytes:
        """The content. In `stream`, what has not been read of it yet."""
        if self._content is None:
            self._content = await buffered(self.body)
        return self._content

    async def text(self) -> str:
        """The content, decoded as its `charset` says. Without one that is known, it is UTF-8.

        What can not be decoded becomes U+FFFD.
        """
        return (await self.bytes()).decode(
            charset_of(self.headers.get('content-type', '')), 'replace')

    async def json(self) -> Any:
        """The content, parsed as JSON. Raises a `json.JSONDecodeError` if it is none."""
        content = await self.bytes() if self._content is None else self._content
        try:
            return json_module.loads(content)
        except json_module.JSONDecodeError:
            raise
        except (ValueError, RecursionError) as cause:
            # It is no UTF-8, is nested too deeply, or has a number that is too long.
            raise json_module.JSONDecodeError(str(cause), '', 0) from cause

    def raise_for_status(self) -> SessionResponse:
        """Raise a `StatusError` if the code is 400 or above. Otherwise return the response."""
        if self.code < b'400':
            return self
        content = self._content
        if content is None:
            content = self.body.content() if isinstance(self.body, HeldBody) else b''
        shown = f'{content[:MAX_SHOWN]!r}' + ('…' if len(content) > MAX_SHOWN else '')
        raise StatusError(
            f'{self._method.decode()} {origin_of(self.url) or ""}: {self.status} '
            f'{getattr(self.body, "reason", b"").decode("latin-1")}: {shown}',
            self, content[:MAX_CONTENT])


# A list, because there are codecs of Python that are no charset of a web page, and some of them
# take very long for what a server can send.
CHARSET = re.compile(r';\s*charset\s*=\s*"?([^\s";,]+)', re.IGNORECASE)
NO_CHARSETS = frozenset((
    'idna', 'mbcs', 'oem', 'punycode', 'raw-unicode-escape', 'undefined', 'unicode-escape'))


def charset_of(content_type: str) -> str:
    match = CHARSET.search(content_type)
    name = match[1] if match is not None else 'utf-8'
    # To look for a name that is not ASCII is deprecated, and finds nothing.
    with contextlib.suppress(LookupError, ValueError):
        info = codecs.lookup(name if name.isascii() else 'utf-8')
        if info._is_text_encoding and info.name.replace('_', '-') not in NO_CHARSETS:
            return info.name
    return 'utf-8'


# --------------------------------------------------------------------------------- requests

def pairs_of(headers: RequestHeaders) -> Fields:
    """Headers as lowhaio takes them. The items of a list are fields each."""
    pairs: Iterable[tuple[Any, Any]] = headers.items() if isinstance(headers, Mapping) else headers
    return tuple((as_bytes(name), as_bytes(value)) for name, value in expanded(pairs))


def expanded(pairs: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    for name, value in pairs:
        for each in value if isinstance(value, (list, tuple)) else (value,):
            yield name, each


def as_bytes(text: str | bytes) -> bytes:
    if isinstance(text, bytes):
        return text
    if not isinstance(text, str):
        raise TypeError(f'methods and headers must be str or bytes, got {type(text).__name__}')
    if not text.isascii() and max(text) > '\xff':
        # The exception of `encode` would hold all of it, and it may be a secret.
        raise ValueError('methods and headers must have no character above U+00FF: encode what '
                         'is to be sent in another way as bytes')
    return text.encode('latin-1')


def has(headers: Fields, wanted: bytes) -> bool:
    return any(name.lower() == wanted for name, _ in headers)


def with_defaults(headers: Fields, defaults: Fields) -> Fields:
    """The headers, and after them the defaults whose names they do not have."""
    names = {name.lower() for name, _ in headers}
    return (*headers, *(pair for pair in defaults if pair[0].lower() not in names))


def body_of(headers: Fields, json: Any, data: Any, files: Any, content: Any,
            ) -> tuple[Body, Fields]:
    """The body of a request, and the fields that describe it."""
    given = [name for name, value in (('json', json), ('data', data), ('files', files),
                                      ('content', content)) if value is not None]
    if len(given) > 1 and given != ['data', 'files']:
        raise TypeError(f'{" and ".join(given)} are given, but a request has one body: json, '
                        'content, data, or data and files')
    if files is not None:
        return multipart(data or (), files)
    if json is not None:
        return held(json_module.dumps(
            json, ensure_ascii=False, separators=(',', ':'), allow_nan=False).encode(),
            b'application/json')
    return content_of(headers, content) if data is None else form(data)


def held(data: bytes, kind: bytes) -> tuple[Body, Fields]:
    return streamed(data), ((b'content-type', kind), (b'content-length', b'%d' % len(data)))


def content_of(headers: Fields, content: Any) -> tuple[Body, Fields]:
    if isinstance(content, str):
        return held(content.encode(), b'text/plain; charset=utf-8')
    if isinstance(content, FILES) or hasattr(content, 'read'):
        return sized(content)
    if isinstance(content, AsyncIterable):
        iterable: AsyncIterable[bytes] = content

        def iterated() -> AsyncIterator[bytes]:
            return aiter(iterable)

        content = iterated
    if not callable(content):
        raise TypeError('content must be str, bytes, a binary file, a Path, an async iterable of '
                        f'bytes or a function that returns one, got {type(content).__name__}')
    body = cast(Body, content)
    if has(headers, b'content-length'):
        return body, ()
    return chunked(body), ((b'transfer-encoding', b'chunked'),)


FILES = (bytes, bytearray, memoryview, os.PathLike)
