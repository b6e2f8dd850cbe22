"""Follows redirects: a layer around the `request` of lowhaio.

::

    request, close = Pool()
    request = redirectable(request)
    code, headers, body = await request(b'GET', 'https://example.com/')
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
    HttpConnectionError,
    HttpDataError,
    HttpError,
    HttpLoggerAdapter,
    canonical_host,
    empty_async_iterator,
    repeatable,
)

# Bytes of a redirect's own body that are read, so that its connection can be used again. Each
# read counts as a kibibyte more: the smallest takes its time, too.
MAX_DRAINED = 64 * 1024

# Seconds for that. A new connection costs less than to wait any longer.
DRAIN_TIMEOUT = 1

# How much of an origin that a server gave is shown in an error.
MAX_SHOWN = 100

Fields = tuple[tuple[bytes, bytes], ...]
Response = tuple[bytes, Fields, Any]
# A layer returns the type that it is given: the same arguments, the same body.
AnyRequest = TypeVar('AnyRequest', bound=Callable[..., Awaitable[Response]])
AnyError = TypeVar('AnyError', bound=HttpError)
Transformed = tuple[bytes, Any, Any, Any, Fields]
Transform = Callable[[bytes, Any, Any, Any, Fields], Transformed]
TransformHeaders = Callable[[Fields, str, str], Iterable[tuple[bytes, bytes]]]


class Hop(NamedTuple):
    """A redirect."""

    code: bytes
    """Three digits, as of a response."""

    url: str
    """Where it led to: an absolute URL, with the fragment. The URL of the last hop is that of the
    response. The `params` of a request are not in it, if a redirect led to the very same URL."""


class HttpRedirectError(HttpDataError):
    """A redirect was answered, but could not be followed.

    The first request has been sent and answered, so this is never an `HttpConnectionError`,
    even if nothing could be sent to where the redirect leads.
    """

    response_started = True

    hops: tuple[Hop, ...] = ()
    """The redirects, as `hops` returns them. The last one was not followed, or led to the failure.

    Unlike the message, they show whole URLs."""

    is_lasting = True
    """lowhaio-retry does not try again, unless a cause could be another one the next time."""


class HttpTooManyRedirects(HttpRedirectError):
    """More than `max_redirects` in a row."""


def hops(of: object) -> tuple[Hop, ...]:
    """The redirects behind a response body, or behind an `HttpError` of a request, in their order.

    An empty tuple if there were none.
    """
    found: tuple[Hop, ...] = getattr(of, 'hops', ())
    return found


class RedirectedBody:
    """The body of a response that was redirected to. All but `hops` is as in that body."""

    __slots__ = ('_body', 'hops')

    def __init__(self, body: Any, hops: tuple[Hop, ...]) -> None:
        self._body = body
        self.hops = hops

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

# About the content of a request, so without meaning once that is dropped (RFC 9110 15.4).
OF_CONTENT = frozenset((
    b'content-digest', b'content-disposition', b'content-encoding', b'content-language',
    b'content-length', b'content-location', b'content-md5', b'content-range', b'content-type',
    b'digest', b'expect', b'last-modified', b'repr-digest', b'trailer', b'transfer-encoding'))

# What else another origin may know: it tells what is asked for, and not who asks.
HARMLESS: frozenset[bytes] = OF_CONTENT | frozenset((
    b'accept', b'accept-charset', b'accept-encoding', b'accept-language', b'cache-control',
    b'connection', b'if-match', b'if-modified-since', b'if-none-match', b'if-range',
    b'if-unmodified-since', b'pragma', b'range', b'te', b'user-agent'))


def unchanged(method: bytes, body: Any, body_args: Any, body_kwargs: Any,
              headers: Fields) -> Transformed:
    """The same request."""
    return method, body, body_args, body_kwargs, headers


def get(method: bytes, body: Any, body_args: Any, body_kwargs: Any,
        headers: Fields) -> Transformed:
    """A GET, without body and the fields about it."""
    return b'GET', empty_async_iterator, (), (), tuple(
        field for field in headers if field[0].lower() not in OF_CONTENT)


def strip_if_other_origin(
        headers: Fields, request_origin: str, redirect_origin: str,
        kept: Container[bytes] = HARMLESS) -> Fields:
    """To another origin only harmless fields are passed on, or those of the lower-case names."""
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

DEFAULT_SCHEMES = (('http', 'http'), ('http', 'https'), ('https', 'https'))


# -------------------------------------------------------------------------------- the layer

# A child of the logger of lowhaio, so that what is set there, such as a level, is good for both.
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

    - `redirects`: pairs of a code and a function, which is called with the method and returns a
      transform: called with `(method, body, body_args, body_kwargs, headers)`, that returns
      those of the next request, as `unchanged` and `get` do. Other codes are returned.
    - `max_redirects`: one more raises `HttpTooManyRedirects`. If it is 0, redirects are returned.
    - `transform_headers(headers, request_origin, redirect_origin)` returns the headers of the
      next request. Origins are `'scheme://host:port'`.
    - `schemes`: pairs of the scheme of a request and that of a redirect that is followed. Any
      other raises `HttpRedirectError`.
    - `keep`: names of fields that other origins get, too, whatever they hold.

    The names of the fields that are left out at a redirect are logged at INFO.
    """
    transforms = dict(redirects)
    followed_schemes = frozenset((old, new) for old, new in schemes)
    for function in (request, transform_headers, *transforms.values()):
        if not callable(function):
            raise TypeError(f'redirectable needs functions, got {function!r}')
    for code in transforms:
        if not isinstance(code, bytes) or not re.fullmatch(rb'[0-9]{3}', code):
            raise ValueError(f'redirects must be for codes of three digits, got {code!r}')
    if not isinstance(max_redirects, int) or max_redirects < 0:
        raise ValueError(f'max_redirects must be a number, 0 or more, got {max_redirects!r}')
    next_headers = keeping(keep, transform_headers)
    if not max_redirects:
        transforms = {}

    async def redirectable_request(
            method: bytes, url: str, params: Any = (), headers: Any = (),
            body: Any = empty_async_iterator, body_args: Any = (), body_kwargs: Any = (),
            **kwargs: Any) -> Response:
        headers, body_args, body_kwargs = (
            reiterable(headers), reiterable(body_args), reiterable(body_kwargs))
        body = repeatable(body)
        followed: tuple[Hop, ...] = ()
        while True:
            try:
                response = await request(
                    method, url, params=params, headers=headers, body=body,
                    body_args=body_args, body_kwargs=body_kwargs, **kwargs)
            except HttpError as error:
                if followed:
                    raise_as_answered(error, followed)
                raise
            code, response_headers, response_body = response
            location = location_of(response_headers) if code in transforms else None
            if location is None:
                return response if not followed else (
                    code, response_headers, RedirectedBody(response_body, followed))
            await drain(response_body)

            followed += (Hop(code, led_to(followed[-1].url if followed else url, location)),)
            last_method, last_url, url = method, url, followed[-1].url.partition('#')[0]
            # Without path and query, it is the very URL that was asked for: RFC 3986 4.4.
            if location.partition('#')[0]:
                params = ()
            last_origin, origin = origin_of(last_url), origin_of(url)
            what = f'{method.decode()} {last_origin}: the redirect to {origin[:MAX_SHOWN]!r} '
            if len(followed) > max_redirects:
                raise told(HttpTooManyRedirects(
                    f'{what}passes max_redirects, {max_redirects}'), followed)
            if (scheme_of(last_origin), scheme_of(origin)) not in followed_schemes:
                raise told(HttpRedirectError(f'{what}is refused, for its scheme'), followed)
            if has_userinfo(url):
                raise told(HttpRedirectError(
                    f'{what}is refused, for the userinfo (user:password@) before its host'),
                    followed)
            try:
                method, body, body_args, body_kwargs, headers = transforms[code](method)(
                    method, body, body_args, body_kwargs, headers)
                all_headers = tuple(headers)
                headers = tuple(next_headers(all_headers, last_origin, origin))
                log_left_out(kwargs, last_method, last_url, origin, all_headers, headers)
            except Exception as cause:
                # Its text may have what is secret.
                raise told(HttpRedirectError(
                    f'{what}could not be made a request: {type(cause).__name__}'),
                    followed) from cause

    return cast(AnyRequest, redirectable_request)


def keeping(keep: Iterable[bytes], transform_headers: TransformHeaders) -> TransformHeaders:
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


def reiterable(values: Any) -> Any:
    """What can be iterated over only once would be missing in the second request."""
    # Nearly always. To look at the class alone costs least.
    if type(values) is tuple:
        return values
    return tuple(values) if isinstance(values, Iterator) else values


def location_of(headers: Fields) -> str | None:
    """If there is exactly one. Some servers and proxies say the same twice."""
    locations = {value for name, value in headers if name == b'location'}
    return decoded(locations.pop()) if len(locations) == 1 else None


async def drain(body: Any) -> None:
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


def raise_as_answered(error: HttpError, followed: tuple[Hop, ...]) -> None:
    """Whoever retries must know that the first request has reached its server."""
    error.response_started = True
    if isinstance(error, HttpConnectionError):
        answered = HttpRedirectError(f'after {len(followed)} redirects: {error}')
        answered.reused = error.reused
        answered.is_lasting = False
        raise told(answered, followed) from error
    told(error, followed)


def told(error: AnyError, followed: tuple[Hop, ...]) -> AnyError:
    """The error, with what `hops` is to return of it."""
    vars(error)['hops'] = followed
    return error


def log_left_out(kwargs: dict[str, Any], method: bytes, url: str, origin: str,
                 before: Fields, after: Fields) -> None:
    """The names only. The URL is that of a request, and not yet one that only a server gave."""
    names = {name.lower() for name, _ in after}
    left_out = dict.fromkeys(name.lower() for name, _ in before if name.lower() not in names)
    if left_out:
        get_logger_adapter = kwargs.get('get_logger_adapter', get_logger_adapter_default)
        logger = get_logger_adapter({'lowhaio_method': method.decode(), 'lowhaio_url': url})
        logger.info('Redirected to %r, without the fields %s', origin[:MAX_SHOWN],
                    b', '.join(left_out).decode('latin-1'))


# ------------------------------------------------------------------------------------- URLs
#
# RFC 3986, and not urllib.parse, which drops what it should not: control characters, and the
# "?" of an empty query.

# Appendix B, without the fragment, which is never sent.
REFERENCE = re.compile(r'(?:([A-Za-z][A-Za-z0-9+.\-]*):)?(?://([^/?#]*))?([^?#]*)(\?[^#]*)?')
USERINFO = re.compile(r'[^/?#]*//[^/?#]*@')
HOST_AND_PORT = re.compile(r'(?:.*@)?(.*?)(?::([0-9]*))?', re.DOTALL)
DEFAULT_PORTS = {'http': '80', 'https': '443'}


def decoded(location: bytes) -> str:
    """Bytes that are not UTF-8 are percent-encoded as they are."""
    try:
        return location.decode()
    except UnicodeDecodeError:
        return re.sub(rb'[\x80-\xff]', lambda byte: b'%%%02X' % ord(byte[0]), location).decode()


def split(url: str) -> tuple[str | None, str | None, str, str | None]:
    match = REFERENCE.match(url)
    assert match is not None  # anything matches
    scheme, authority, path, query = match.groups()
    return scheme, authority, path, query


def led_to(url: str, location: str) -> str:
    """With the fragment of the URL, if the location has none: RFC 9110 10.2.2."""
    base, *fragment = url.partition('#')
    reference, *new_fragment = location.partition('#')
    target = resolved(base, reference) if reference else base
    return target + ''.join(new_fragment if new_fragment[0] else fragment)


def resolved(base: str, reference: str) -> str:
    """5.2.2, for a base with an authority and a reference that is not empty."""
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
    """5.2.4, for a path that starts with a slash."""
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
    """'scheme://host:port'. Two forms of an ASCII host that differ here count as two origins."""
    scheme, authority, _, _ = split(url)
    scheme = (scheme or '').lower()
    match = HOST_AND_PORT.fullmatch(authority or '')
    assert match is not None  # anything matches
    host, port = match.groups()
    port = (port or '').lstrip('0') or DEFAULT_PORTS.get(scheme, '')
    if not host.isascii():
        # To compare such names in lower case is not enough: it takes some for others. What lowhaio
        # refuses is shown as it came.
        with contextlib.suppress(ValueError):
            host = canonical_host(host)
    return f'{scheme}://{host.lower().removesuffix(".")}:{port}'


def scheme_of(origin: str) -> str:
    return origin.partition(':')[0]


def has_userinfo(url: str) -> bool:
    return USERINFO.match(url) is not None
