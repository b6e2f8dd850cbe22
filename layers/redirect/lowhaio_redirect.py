"""Follows redirects: a layer around the `request` of lowhaio.

::

    request, close = Pool()
    request = redirectable(request)
    code, headers, body = await request(b'GET', 'https://example.com/')

This layer decides which request follows a redirect, which of its header fields another origin
may see, and when a redirect is refused. It holds nothing between two requests: what it knows of
the redirects of one request is in the tuple that `hops` returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Coroutine, Iterable
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

from lowhaio import (
    Fields,
    Headers,
    HttpConnectionError,
    HttpDataError,
    HttpError,
    HttpLoggerAdapter,
    Phase,
    canonical_host,
    empty_async_iterator,
    repeatable,
)

__all__ = [
    'DEFAULT_REDIRECTS',
    'DEFAULT_SCHEMES',
    'HARMLESS',
    'Hop',
    'HttpRedirectError',
    'HttpTooManyRedirects',
    'get',
    'hops',
    'redirectable',
    'strip_if_other_origin',
    'unchanged',
]

# How many bytes of a redirect's own body are read so that its connection can be used again. Each
# chunk counts as 1 KiB more than it holds, because even the smallest read takes time.
MAX_DRAINED = 64 * 1024

# How many seconds that may take. To wait any longer would cost more than a new connection.
DRAIN_TIMEOUT = 1

# How many characters of an origin that a server gave are shown in an error or a log message.
MAX_SHOWN = 100

Response = tuple[bytes, Fields, Any]
# A layer returns a function of the type that it was given: same arguments, same response.
AnyRequest = TypeVar('AnyRequest', bound=Callable[..., Awaitable[Response]])
AnyError = TypeVar('AnyError', bound=HttpError)
# What a transform may change of a request: method, body, body_args, body_kwargs and headers.
Parts = tuple[bytes, Any, Any, Any, Fields]
Transform = Callable[[bytes, Any, Any, Any, Fields], Parts]
TransformHeaders = Callable[[Fields, str, str], Headers]


class Hop(NamedTuple):
    """One redirect."""

    code: bytes
    """The status code of the redirect: three ASCII digits, such as `b'302'`."""

    url: str
    """The absolute URL that the redirect led to, with its fragment.

    The URL of the last hop is the URL of the response. If a redirect led to the very URL that it
    came from, the `params` of the request were sent again, but they are not part of this URL."""


class HttpRedirectError(HttpDataError):
    """A redirect was received, but could not be followed.

    The first request has been sent and answered by then. So this is never an
    `HttpConnectionError`, even if nothing could be sent to where the redirect leads.
    """

    response_started = True
    phase: Phase | str = Phase.HEAD

    hops: tuple[Hop, ...] = ()
    """The redirects, as `hops` returns them. The last one was not followed, or it led to the
    failure.

    They hold whole URLs, unlike the message, which shows origins only."""

    is_lasting = True
    """Tells lowhaio-retry that the same request would fail in the same way. It is False when the
    cause is a failure to connect, which may succeed the next time."""


class HttpTooManyRedirects(HttpRedirectError):
    """A request met more than `max_redirects` redirects in a row."""


def hops(of: object) -> tuple[Hop, ...]:
    """The redirects that led to a response body, or to an `HttpError` of a request, in order.

    It is an empty tuple if there were none.
    """
    found: tuple[Hop, ...] = getattr(of, 'hops', ())
    return found


class RedirectedBody:
    """The body of a response that was redirected to: that body, with `hops` added."""

    __slots__ = ('_body', 'hops')

    def __init__(self, body: Any, hops: tuple[Hop, ...]) -> None:
        self._body = body
        self.hops = hops

    def __repr__(self) -> str:
        # The URLs may hold what is secret, so they are only counted.
        return f'<RedirectedBody hops={len(self.hops)} of {self._body!r}>'

    def __aiter__(self) -> AsyncIterator[bytes]:
        iterator: AsyncIterator[bytes] = aiter(self._body)
        return iterator

    def __anext__(self) -> Awaitable[bytes]:
        chunk: Awaitable[bytes] = anext(self._body)
        return chunk

    def aclose(self) -> Coroutine[Any, Any, None]:
        closing: Coroutine[Any, Any, None] = self._body.aclose()
        return closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)


# ------------------------------------------------------------ what becomes of the request

# Fields that describe the content of a request. They mean nothing once the content is dropped
# (RFC 9110 15.4).
OF_CONTENT = frozenset((
    b'content-digest', b'content-disposition', b'content-encoding', b'content-language',
    b'content-length', b'content-location', b'content-md5', b'content-range', b'content-type',
    b'digest', b'expect', b'last-modified', b'repr-digest', b'trailer', b'transfer-encoding'))

# All fields that another origin may see. They tell what is asked for, and not who asks.
HARMLESS: frozenset[bytes] = OF_CONTENT | frozenset((
    b'accept', b'accept-charset', b'accept-encoding', b'accept-language', b'cache-control',
    b'connection', b'if-match', b'if-modified-since', b'if-none-match', b'if-range',
    b'if-unmodified-since', b'pragma', b'range', b'te', b'user-agent',
    # The handshake of a WebSocket, but not `sec-websocket-protocol`: some servers want to be told
    # a token there.
    b'sec-websocket-extensions', b'sec-websocket-key', b'sec-websocket-version', b'upgrade'))


def unchanged(method: bytes, body: Any, body_args: Any, body_kwargs: Any,
              headers: Fields) -> Parts:
    """A transform for `redirects`: the next request is the same as this one."""
    return method, body, body_args, body_kwargs, headers


def get(method: bytes, body: Any, body_args: Any, body_kwargs: Any, headers: Fields) -> Parts:
    """A transform for `redirects`: the next request is a GET.

    It has no body, and none of the fields that describe one.
    """
    return b'GET', empty_async_iterator, (), (), tuple(
        field for field in headers if field[0].lower() not in OF_CONTENT)


def strip_if_other_origin(
        headers: Fields, request_origin: str, redirect_origin: str,
        kept: Container[bytes] = HARMLESS) -> Fields:
    """The default of `transform_headers`: another origin gets only the fields named in `kept`.

    `kept` has names in lower case. Within one origin all fields are passed on.
    """
    if request_origin == redirect_origin:
        return headers
    return tuple(field for field in headers if field[0].lower() in kept)


DEFAULT_REDIRECTS: tuple[tuple[bytes, Callable[[bytes], Transform]], ...] = (
    (b'301', lambda method: unchanged if method != b'POST' else get),
    (b'302', lambda method: unchanged if method != b'POST' else get),
    (b'303', lambda method: unchanged if method in (b'GET', b'HEAD') else get),
    (b'307', lambda method: unchanged),
    (b'308', lambda method: unchanged),
)
"""The default of `redirects`: the codes that are followed, and what each makes of a method."""

DEFAULT_SCHEMES = (('http', 'http'), ('http', 'https'), ('https', 'https'))
"""The default of `schemes`: a redirect from https to http is refused."""


# -------------------------------------------------------------------------------- the layer

# A child of the logger of lowhaio, so that a level that is set there holds for both.
LOGGER = logging.getLogger('lowhaio.redirect')


def get_logger_adapter_default(extra: dict[str, Any]) -> logging.LoggerAdapter[Any]:
    return HttpLoggerAdapter(LOGGER, extra)


def redirectable(
        request: AnyRequest,
        redirects: Iterable[tuple[bytes, Callable[[bytes], Transform]]] = DEFAULT_REDIRECTS,
        max_redirects: int = 20,
        transform_headers: TransformHeaders = strip_if_other_origin,
        *, schemes: Iterable[tuple[str, str]] = DEFAULT_SCHEMES,
        keep: Iterable[bytes] = (),
) -> AnyRequest:
    """A `request` that follows redirects. `hops(body)` tells which ones led to a response.

    - `redirects`: pairs of a status code, as bytes, and a function that is called with the method
      and returns a transform. A transform is called with `(method, body, body_args, body_kwargs,
      headers)`, and returns these five for the next request, as `unchanged` and `get` do.
      Responses with other codes are returned as they are.
    - `max_redirects`: how many redirects in a row are followed. The next one raises
      `HttpTooManyRedirects`. With 0, redirects are returned like any other response.
    - `transform_headers(headers, request_origin, redirect_origin)` returns the headers of the
      next request. Origins are strings, `'scheme://host:port'`, and always have the port.
    - `schemes`: pairs of the scheme of a request and the scheme of a redirect that is followed
      from it. Any other pair raises `HttpRedirectError`.
    - `keep`: names of fields, as bytes, that other origins get as well, whatever they hold.

    The names of the fields that a redirect leaves out are logged at INFO. Arguments that make no
    sense raise TypeError or ValueError at once. After the first redirect of a request, every
    `HttpError` is an `HttpDataError`. See RFC 9110 15.4.
    """
    if not callable(request):
        raise TypeError(f'redirectable needs functions, got {request!r}')
    return following(request, Rules(redirects, max_redirects, transform_headers, schemes, keep))


def following(request: AnyRequest, rules: Rules) -> AnyRequest:
    transforms = rules.transforms

    async def redirectable_request(
            method: bytes, url: str, params: Any = (), headers: Any = (),
            body: Any = empty_async_iterator, body_args: Any = (), body_kwargs: Any = (),
            **kwargs: Any) -> Response:
        # The same check as in `reiterable`, without the call of it.
        if type(headers) is not tuple:
            headers = reiterable(headers)
        if body is not empty_async_iterator:
            body = repeatable(body)
            body_args, body_kwargs = reiterable(body_args), reiterable(body_kwargs)
        followed: tuple[Hop, ...] = ()
        while True:
            try:
                # Most requests have no other keywords, and a call with ** takes longer than all
                # else that is done for one that is not redirected.
                response = await (request(
                    method, url, params=params, headers=headers, body=body,
                    body_args=body_args, body_kwargs=body_kwargs, **kwargs,
                ) if kwargs else request(
                    method, url, params=params, headers=headers, body=body,
                    body_args=body_args, body_kwargs=body_kwargs))
            except HttpError as error:
                if followed:
                    raise_as_answered(error, followed)
                raise
            code, response_headers, response_body = response
            location = rules.location(response_headers) if code in transforms else None
            base = None if location is None else base_of(
                followed[-1].url if followed else url, kwargs.get('target'))
            if location is None or base is None:
                return response if not followed else (
                    code, response_headers, RedirectedBody(response_body, followed))
            await drain(response_body)

            followed += (Hop(code, led_to(base, location)),)
            # A location without path and query stands for the URL of the request, which the params
            # and the target are part of (RFC 3986 4.4).
            if location.partition('#')[0]:
                params = ()
                kwargs.pop('target', None)
            method, body, body_args, body_kwargs, headers = rules.next_parts(
                followed, url, (method, body, body_args, body_kwargs, headers), kwargs)
            next_url = followed[-1].url.partition('#')[0]
            # It is the name of one server. Another one has to prove its own.
            if origin_of(next_url) != origin_of(url):
                kwargs.pop('server_hostname', None)
            url = next_url

    return cast(AnyRequest, redirectable_request)


class Rules:
    """The checked arguments of `redirectable`, and what they make of one redirect."""

    __slots__ = ('transforms', 'max_redirects', 'transform_headers', 'schemes')

    def __init__(self, redirects: Iterable[tuple[bytes, Callable[[bytes], Transform]]],
                 max_redirects: int, transform_headers: TransformHeaders,
                 schemes: Iterable[tuple[str, str]], keep: Iterable[bytes]) -> None:
        self.transforms = dict(redirects)
        self.max_redirects = max_redirects
        self.schemes = frozenset((old, new) for old, new in schemes)
        for function in (transform_headers, *self.transforms.values()):
            if not callable(function):
                raise TypeError(f'redirectable needs functions, got {function!r}')
        for code in self.transforms:
            if not isinstance(code, bytes) or not re.fullmatch(rb'[0-9]{3}', code):
                raise ValueError(f'redirects must be for codes of three digits, got {code!r}')
        if not isinstance(max_redirects, int) or max_redirects < 0:
            raise ValueError(f'max_redirects must be a number, 0 or more, got {max_redirects!r}')
        if not max_redirects:
            self.transforms = {}
        self.transform_headers = keeping(keep, transform_headers)

    def location(self, headers: Fields) -> str | None:
        """Where a response redirects to, or None if it is to be returned."""
        # Some servers and proxies send the same location twice. Different ones are ambiguous.
        locations = {value for name, value in headers if name == b'location'}
        return decoded(locations.pop()) if len(locations) == 1 else None

    def next_parts(self, followed: tuple[Hop, ...], last_url: str, parts: Parts,
                   kwargs: dict[str, Any]) -> Parts:
        """The parts of the request that the last of these redirects leads to.

        Raises `HttpRedirectError` if that redirect must not, or cannot, be followed.
        """
        code, url = followed[-1]
        last_origin, origin = origin_of(last_url), origin_of(url)
        what = f'{parts[0].decode()} {last_origin}: the redirect to {origin[:MAX_SHOWN]!r} '
        if len(followed) > self.max_redirects:
            raise with_hops(HttpTooManyRedirects(
                f'{what}passes max_redirects, {self.max_redirects}'), followed)
        if (scheme_of(last_origin), scheme_of(origin)) not in self.schemes:
            raise with_hops(HttpRedirectError(f'{what}is refused, for its scheme'), followed)
        if has_userinfo(url):
            raise with_hops(HttpRedirectError(
                f'{what}is refused, for the userinfo (user:password@) before its host'), followed)
        try:
            method, body, body_args, body_kwargs, headers = self.transforms[code](parts[0])(*parts)
            headers = tuple(headers)
            sent = tuple(self.transform_headers(headers, last_origin, origin))
            log_left_out(kwargs, parts[0], last_url, origin, headers, sent)
        except Exception as cause:
            # The message has only the class of the cause, because its text may hold a secret.
            raise with_hops(HttpRedirectError(
                f'{what}could not be made a request: {type(cause).__name__}'),
                followed) from cause
        return method, body, body_args, body_kwargs, sent


def keeping(keep: Iterable[bytes], transform_headers: TransformHeaders) -> TransformHeaders:
    """The `transform_headers` that passes the fields named in `keep` to other origins as well."""
    names = tuple(keep)
    for name in names:
        if not isinstance(name, bytes):
            raise TypeError(f'keep must have names of fields, as bytes, got {name!r}')
    if not names:
        return transform_headers
    if transform_headers is not strip_if_other_origin:
        raise ValueError('keep is of no use beside a transform_headers: that has to keep them')
    return partial(strip_if_other_origin,
                   kept=HARMLESS | frozenset(name.lower() for name in names))


def raise_as_answered(error: HttpError, followed: tuple[Hop, ...]) -> None:
    """Make the error of a later request tell that the first one was answered.

    A layer that retries must know that the first request has reached its server. So an
    `HttpConnectionError` becomes an `HttpRedirectError`, which is raised here.
    """
    error.response_started = True
    if isinstance(error, HttpConnectionError):
        answered = HttpRedirectError(f'after {len(followed)} redirects: {error}')
        answered.reused = error.reused
        answered.phase = error.phase
        answered.is_lasting = False
        raise with_hops(answered, followed) from error
    with_hops(error, followed)


def with_hops(error: AnyError, followed: tuple[Hop, ...]) -> AnyError:
    """The same error, for which `hops` returns these redirects from now on."""
    vars(error)['hops'] = followed
    return error


def log_left_out(kwargs: dict[str, Any], method: bytes, url: str, origin: str,
                 before: Fields, after: Fields) -> None:
    """Log the names, and never the values, of the fields that the next request does not have.

    `url` is that of the request that was redirected.
    """
    names = {name.lower() for name, _ in after}
    left_out = dict.fromkeys(name.lower() for name, _ in before if name.lower() not in names)
    if left_out:
        get_logger_adapter = kwargs.get('get_logger_adapter', get_logger_adapter_default)
        logger = get_logger_adapter({'lowhaio_method': method.decode(), 'lowhaio_url': url})
        logger.info('Redirected to %r, without the fields %s', origin[:MAX_SHOWN],
                    b', '.join(left_out).decode('latin-1'))


# Each layer that makes a second request has its own copy of these two functions. A module that
# they share would be one more thing to install, and lowhaio itself has no use for them.

def reiterable(values: Any) -> Any:
    """The same values, as a tuple if they could be iterated over only once.

    Otherwise the second request would be sent without them.
    """
    # Nearly all values are tuples, and looking at the class alone is the cheapest check.
    if type(values) is tuple:
        return values
    return tuple(values) if isinstance(values, Iterator) else values


async def drain(body: Any) -> None:
    """Read the rest of a response body, so that its connection can be used again, and close it.

    If the body is too long, too slow or cut off, its connection is closed instead.
    """
    left = MAX_DRAINED
    try:
        with contextlib.suppress(HttpError, TimeoutError):
            async with asyncio.timeout(DRAIN_TIMEOUT):
                async for chunk in body:
                    left -= len(chunk) + 1024
                    if left < 0:
                        break
    finally:
        await body.aclose()


# ------------------------------------------------------------------------------------- URLs
#
# References are resolved as RFC 3986 says. urllib.parse is not used, because it drops control
# characters and the "?" of an empty query. Numbers of sections below are those of RFC 3986.

# The pattern of appendix B, without the fragment, which is never sent.
REFERENCE = re.compile(r'(?:([A-Za-z][A-Za-z0-9+.\-]*):)?(?://([^/?#]*))?([^?#]*)(\?[^#]*)?')
USERINFO = re.compile(r'[^/?#]*//[^/?#]*@')
HOST_AND_PORT = re.compile(r'(?:.*@)?(.*?)(?::([0-9]*))?', re.DOTALL)
DEFAULT_PORTS = {'http': '80', 'https': '443'}


def decoded(location: bytes) -> str:
    """The location as text. If it is not UTF-8, each byte above 127 is percent-encoded."""
    try:
        return location.decode()
    except UnicodeDecodeError:
        return re.sub(rb'[\x80-\xff]', lambda byte: b'%%%02X' % ord(byte[0]), location).decode()


def split(url: str) -> tuple[str | None, str | None, str, str | None]:
    """Scheme, authority, path, and query with its "?". What is missing is None."""
    match = REFERENCE.match(url)
    assert match is not None  # anything matches
    scheme, authority, path, query = match.groups()
    return scheme, authority, path, query


def led_to(url: str, location: str) -> str:
    """The URL that a `location` in a response to this URL stands for.

    If the location has no fragment, it inherits the one of the URL (RFC 9110 10.2.2).
    """
    base, *fragment = url.partition('#')
    reference, *new_fragment = location.partition('#')
    target = resolved(base, reference) if reference else base
    return target + ''.join(new_fragment if new_fragment[0] else fragment)


def base_of(url: str, target: Any) -> str | None:
    """The URL that a request with this URL and target is for (RFC 9112 3.3).

    It is None if the target names another origin, as one for a proxy may. A proxy passes such a
    request on, and only whoever made the target knows how the next one gets there.
    """
    if target is None or target == b'*':
        return url
    text = decoded(target).replace('#', '%23')
    _, hash_sign, fragment = url.partition('#')
    if text.startswith('/'):
        scheme, authority, _, _ = split(url)
        text = f'{scheme}://{authority}{text}'
    return text + hash_sign + fragment if origin_of(text) == origin_of(url) else None


def resolved(base: str, reference: str) -> str:
    """Resolve a reference that is not empty against a base that has an authority (5.2.2)."""
    scheme, authority, path, query = split(reference)
    if scheme is None:
        scheme, base_authority, base_path, _ = split(base)
        if authority is None:
            authority = base_authority
            if not path:
                return f'{scheme}://{authority}{base_path}{query}'
            if not path.startswith('/'):
                path = base_path.rpartition('/')[0] + '/' + path
    if path.startswith('/'):
        path = without_dot_segments(path)
    return f'{scheme}:' + ('' if authority is None else f'//{authority}') + path + (query or '')


def without_dot_segments(path: str) -> str:
    """Remove the segments "." and ".." of a path that starts with a slash (5.2.4)."""
    kept: list[str] = []
    _, *segments = path.split('/')
    for segment in segments:
        if segment == '..':
            del kept[-1:]
        elif segment != '.':
            kept.append(segment)
    if segments[-1] in ('.', '..'):
        kept.append('')
    return '/' + '/'.join(kept)


def origin_of(url: str) -> str:
    """The origin of a URL, as 'scheme://host:port'.

    ASCII hosts are only put into lower case, so two spellings of one IP address are two origins.
    """
    scheme, authority, _, _ = split(url)
    scheme = (scheme or '').lower()
    match = HOST_AND_PORT.fullmatch(authority or '')
    assert match is not None  # anything matches
    host, port = match.groups()
    port = (port or '').lstrip('0') or DEFAULT_PORTS.get(scheme, '')
    if not host.isascii():
        # Lower case alone would not do: it makes one name of some that have different owners. A
        # name that lowhaio refuses is left as it came, and shown in an error.
        with contextlib.suppress(ValueError):
            host = canonical_host(host)
    return f'{scheme}://{host.lower().removesuffix(".")}:{port}'


def scheme_of(origin: str) -> str:
    return origin.partition(':')[0]


def has_userinfo(url: str) -> bool:
    return USERINFO.match(url) is not None
