"""Follows redirects: a layer around the `request` of lowhaio.

::

    request, close = Pool()
    request = redirectable(request)
    code, headers, body = await request(b'GET', 'https://example.com/')
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, TypeVar, cast

from lowhaio import (
    HttpConnectionError,
    HttpDataError,
    HttpError,
    empty_async_iterator,
    repeatable,
)

# Bytes of a redirect's own body that are read, so that its connection can be used again. Each
# read counts as a kibibyte more: the smallest takes its time, too.
MAX_DRAINED = 64 * 1024

# How much of an origin that a server gave is shown in an error.
MAX_SHOWN = 100

Fields = tuple[tuple[bytes, bytes], ...]
Response = tuple[bytes, Fields, Any]
# A layer returns the type that it is given: the same arguments, the same body.
AnyRequest = TypeVar('AnyRequest', bound=Callable[..., Awaitable[Response]])
Transformed = tuple[bytes, Any, Any, Any, Fields]
Transform = Callable[[bytes, Any, Any, Any, Fields], Transformed]
TransformHeaders = Callable[[Fields, str, str], Iterable[tuple[bytes, bytes]]]


class HttpRedirectError(HttpDataError):
    """A redirect was answered, but could not be followed.

    The first request has been sent and answered, so this is never an `HttpConnectionError`,
    even if nothing could be sent to where the redirect leads.
    """

    response_started = True


class HttpTooManyRedirects(HttpRedirectError):
    """More than `max_redirects` in a row."""


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
        headers: Fields, request_origin: str, redirect_origin: str) -> Fields:
    """To another origin only harmless fields are passed on."""
    if request_origin == redirect_origin:
        return headers
    return tuple(field for field in headers if field[0].lower() in HARMLESS)


DEFAULT_REDIRECTS: tuple[tuple[bytes, Callable[[bytes], Transform]], ...] = (
    (b'301', lambda method: unchanged if method != b'POST' else get),
    (b'302', lambda method: unchanged if method != b'POST' else get),
    (b'303', lambda method: unchanged if method in (b'GET', b'HEAD') else get),
    (b'307', lambda method: unchanged),
    (b'308', lambda method: unchanged),
)

DEFAULT_SCHEMES = (('http', 'http'), ('http', 'https'), ('https', 'https'))


# -------------------------------------------------------------------------------- the layer

def redirectable(
        request: AnyRequest,
        redirects: Iterable[tuple[bytes, Callable[[bytes], Transform]]] = DEFAULT_REDIRECTS,
        max_redirects: int = 20,
        transform_headers: TransformHeaders = strip_if_other_origin,
        *, schemes: Iterable[tuple[str, str]] = DEFAULT_SCHEMES,
) -> AnyRequest:
    """A `request` that follows redirects.

    - `redirects`: pairs of a code and a function, which is called with the method and returns a
      transform: called with `(method, body, body_args, body_kwargs, headers)`, that returns
      those of the next request, as `unchanged` and `get` do. Other codes are returned.
    - `max_redirects`: one more raises `HttpTooManyRedirects`.
    - `transform_headers(headers, request_origin, redirect_origin)` returns the headers of the
      next request. Origins are `'scheme://host:port'`.
    - `schemes`: pairs of the scheme of a request and that of a redirect that is followed. Any
      other raises `HttpRedirectError`.
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

    async def redirectable_request(
            method: bytes, url: str, params: Any = (), headers: Any = (),
            body: Any = empty_async_iterator, body_args: Any = (), body_kwargs: Any = (),
            **kwargs: Any) -> Response:
        headers, body_args, body_kwargs = map(reiterable, (headers, body_args, body_kwargs))
        body = repeatable(body)
        followed = 0
        while True:
            try:
                code, response_headers, response_body = await request(
                    method, url, params=params, headers=headers, body=body,
                    body_args=body_args, body_kwargs=body_kwargs, **kwargs)
            except HttpError as error:
                if followed:
                    raise_as_answered(error, followed)
                raise
            locations = [value for name, value in response_headers if name == b'location']
            if code not in transforms or len(locations) != 1:
                return code, response_headers, response_body
            await drain(response_body)

            followed += 1
            old_origin = origin_of(url)
            location = decoded(locations[0])
            # Without path and query, it is the very URL that was asked for: RFC 3986 4.4.
            if location.partition('#')[0]:
                url, params = resolved(url, location), ()
            origin = origin_of(url)
            what = f'{method.decode()} {old_origin}: the redirect to {origin[:MAX_SHOWN]!r} '
            if followed > max_redirects:
                raise HttpTooManyRedirects(f'{what}passes max_redirects, {max_redirects}')
            if (scheme_of(old_origin), scheme_of(origin)) not in followed_schemes:
                raise HttpRedirectError(f'{what}is refused, for its scheme')
            method, body, body_args, body_kwargs, headers = transforms[code](method)(
                method, body, body_args, body_kwargs, headers)
            headers = tuple(transform_headers(headers, old_origin, origin))

    return cast(AnyRequest, redirectable_request)


def reiterable(values: Any) -> Any:
    """What can be iterated over only once would be missing in the second request."""
    return tuple(values) if isinstance(values, Iterator) else values


async def drain(body: Any) -> None:
    left = MAX_DRAINED
    try:
        with contextlib.suppress(HttpError):
            async for chunk in body:
                left -= len(chunk) + 1024
                if left < 0:
                    break
    finally:
        await body.aclose()


def raise_as_answered(error: HttpError, followed: int) -> None:
    """Whoever retries must know that the first request has reached its server."""
    error.response_started = True
    if isinstance(error, HttpConnectionError):
        answered = HttpRedirectError(f'after {followed} redirects: {error}')
        answered.reused = error.reused
        raise answered from error


# ------------------------------------------------------------------------------------- URLs
#
# RFC 3986, and not urllib.parse, which drops what it should not: control characters, and the
# "?" of an empty query.

# Appendix B, without the fragment, which is never sent.
REFERENCE = re.compile(r'(?:([A-Za-z][A-Za-z0-9+.\-]*):)?(?://([^/?#]*))?([^?#]*)(\?[^#]*)?')
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
    """'scheme://host:port'. Two forms of one host that differ here count as two origins."""
    scheme, authority, _, _ = split(url)
    scheme = (scheme or '').lower()
    match = HOST_AND_PORT.fullmatch(authority or '')
    assert match is not None  # anything matches
    host, port = match.groups()
    port = (port or '').lstrip('0') or DEFAULT_PORTS.get(scheme, '')
    return f'{scheme}://{host.lower().removesuffix(".")}:{port}'


def scheme_of(origin: str) -> str:
    return origin.partition(':')[0]
