"""Authenticates requests to one origin: layers around the `request` of lowhaio.

::

    request, close = Pool()
    request = basic(request, 'user', 'password', origin='https://example.com')
    code, headers, body = await request(b'GET', 'https://example.com/')

No library for clients that is still kept has digest apart from an HTTP client of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import secrets
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, TypeVar, cast
from urllib.parse import quote, urlencode

from lowhaio import (
    HttpConnectionError,
    HttpDataError,
    HttpError,
    empty_async_iterator,
    repeatable,
)

# Bytes of a 401's own body that are read, and seconds for them, so that its connection can be used
# again. Each read counts as a kibibyte more: the smallest takes its time, too.
MAX_DRAINED = 64 * 1024
DRAIN_TIMEOUT = 1

Fields = tuple[tuple[bytes, bytes], ...]
Response = tuple[bytes, Fields, Any]
# A layer returns the type that it is given: the same arguments, the same body.
AnyRequest = TypeVar('AnyRequest', bound=Callable[..., Awaitable[Response]])
GetToken = Callable[[], Awaitable[str]]


# --------------------------------------------------------------------------- basic and bearer

def basic(request: AnyRequest, username: str, password: str,
          *, origin: str | None = None) -> AnyRequest:
    """A `request` with a user name and a password (RFC 7617).

    They go to `origin` only, `'https://example.com'` say, or else to that of the first request.
    """
    name, secret = checked_credentials(username, password)
    if b':' in name:
        raise ValueError('username must not have a colon')
    value = b'Basic ' + b64encode(name + b':' + secret)

    async def get_value() -> bytes:
        return value

    return authorized(request, get_value, origin)


def bearer(request: AnyRequest, get_token: GetToken, *, origin: str | None = None) -> AnyRequest:
    """A `request` with a token (RFC 6750), which a coroutine function returns as str.

    It is called for each request to `origin`, or else to that of the first request.
    """
    async def get_value() -> bytes:
        token = await get_token()
        if not re.fullmatch(r'[A-Za-z0-9\-._~+/]+=*', token):
            raise ValueError('get_token must return a token without spaces or the like')
        return b'Bearer ' + token.encode()

    check_callable(get_token)
    return authorized(request, get_value, origin)


def authorized(request: AnyRequest, get_value: Callable[[], Awaitable[bytes]],
               origin: str | None) -> AnyRequest:
    check_callable(request)
    is_for_us = bound_to(origin)

    async def authorized_request(
            method: bytes, url: str, params: Any = (), headers: Any = (),
            body: Any = empty_async_iterator, body_args: Any = (), body_kwargs: Any = (),
            **kwargs: Any) -> Response:
        headers = reiterable(headers)
        if is_for_us(url) and not has_authorization(headers):
            try:
                headers = (*headers, (b'authorization', await get_value()))
            except Exception as cause:
                # Its text may have what is secret.
                raise not_sent(method, url, f'get_token failed: {type(cause).__name__}') from cause
        return await request(
            method, url, params=params, headers=headers, body=body, body_args=body_args,
            body_kwargs=body_kwargs, **kwargs)

    return cast(AnyRequest, authorized_request)


# -------------------------------------------------------------------------------------- digest
#
# RFC 7616, with qop=auth. The challenge of the last 401 is answered in all later requests, so
# that only the first one, and one after the nonce has become stale, is made twice.

HASHES = {'SHA-256': hashlib.sha256, 'MD5': hashlib.md5}

# RFC 9110 11.2: "scheme name=value, name=value, scheme name=value". What is no parameter, as
# in challenges of other schemes, is skipped. It does not begin within a token, nor go back.
TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
PARAMETER = re.compile(
    rb'(?<!%b)(?:(%b++)[ \t]++(?=%b))?(%b++)[ \t]*+=[ \t]*+(%b++|"(?:[^"\\]|\\.)*+")'
    % ((TOKEN,) * 5))


def digest(request: AnyRequest, username: str, password: str, *, origin: str | None = None,
           algorithms: Iterable[str] = ('SHA-256', 'MD5')) -> AnyRequest:
    """A `request` that proves that it knows a password (RFC 7616), without sending that.

    It does so to `origin` only, `'https://example.com'` say, or else to that of the first
    request. `algorithms` are those accepted; the first of them that a server offers is used.
    """
    check_callable(request)
    name, secret = checked_credentials(username, password)
    accepted = tuple(algorithms)
    if not accepted or not set(accepted) <= set(HASHES):
        raise ValueError(f'algorithms must be some of {", ".join(HASHES)}, got {accepted!r}')
    is_for_us = bound_to(origin)
    challenge: Challenge | None = None

    async def digest_request(
            method: bytes, url: str, params: Any = (), headers: Any = (),
            body: Any = empty_async_iterator, body_args: Any = (), body_kwargs: Any = (),
            **kwargs: Any) -> Response:
        nonlocal challenge
        headers, body_args, body_kwargs = map(reiterable, (headers, body_args, body_kwargs))
        body = repeatable(body)
        is_ours = is_for_us(url) and not has_authorization(headers)
        is_again = False
        while True:
            sent = {'url': url, 'params': params, 'headers': headers}
            if is_ours and challenge is not None:
                try:
                    whole_url, target = encoded(url, params)
                    answer = challenge.answer(name, secret, method, target)
                except (TypeError, ValueError) as cause:
                    raise not_sent(method, url, f'refused: {cause}') from cause
                sent = {'url': whole_url, 'headers': (*headers, (b'authorization', answer))}
            try:
                code, response_headers, response_body = await request(
                    method, **sent, body=body, body_args=body_args, body_kwargs=body_kwargs,
                    **kwargs)
            except HttpConnectionError as error:
                if is_again:
                    raise as_answered(error) from error
                raise
            is_asked = is_ours and not is_again and code == b'401'
            new = best_challenge(response_headers, accepted) if is_asked else None
            if new is None:
                return code, response_headers, response_body
            challenge = new
            is_again = True
            await drain(response_body)

    return cast(AnyRequest, digest_request)


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


def as_answered(error: HttpConnectionError) -> HttpDataError:
    """Whoever retries must know that the request has reached its server, and was refused there."""
    answered = HttpDataError(f'after a first answer, 401: {error}')
    answered.reused = error.reused
    answered.response_started = True
    return answered


class Challenge:
    __slots__ = ('parameters', 'algorithm', 'cnonce', 'count')

    def __init__(self, parameters: dict[bytes, bytes]) -> None:
        self.parameters = parameters
        self.algorithm = parameters.get(b'algorithm', b'MD5').decode('latin-1').upper()
        self.cnonce = secrets.token_hex(16).encode()
        self.count = 0

    def rank(self, accepted: tuple[str, ...]) -> int:
        """Its place among them, or -1 if it can not be answered."""
        name = self.algorithm.removesuffix('-SESS')
        qop = re.split(rb'[ \t]*,[ \t]*', self.parameters.get(b'qop', b'').lower())
        is_whole = b'realm' in self.parameters and b'nonce' in self.parameters
        return accepted.index(name) if name in accepted and b'auth' in qop and is_whole else -1

    def hash(self, *parts: bytes) -> bytes:
        function = HASHES[self.algorithm.removesuffix('-SESS')]
        return function(b':'.join(parts), usedforsecurity=False).hexdigest().encode()

    def answer(self, name: bytes, password: bytes, method: bytes, target: bytes) -> bytes:
        """RFC 7616 3.4, the value of the field."""
        self.count += 1
        count = b'%08x' % self.count
        realm, nonce = self.parameters[b'realm'], self.parameters[b'nonce']
        secret = self.hash(name, realm, password)
        if self.algorithm.endswith('-SESS'):
            secret = self.hash(secret, nonce, self.cnonce)
        response = self.hash(
            secret, nonce, count, self.cnonce, b'auth', self.hash(method, target))
        values = [(b'username', quoted(name)), (b'realm', quoted(realm)),
                  (b'nonce', quoted(nonce)), (b'uri', quoted(target)),
                  (b'response', quoted(response)), (b'qop', b'auth'), (b'nc', count),
                  (b'cnonce', quoted(self.cnonce))]
        for optional, form in ((b'algorithm', bytes), (b'opaque', quoted)):
            if optional in self.parameters:
                values.append((optional, form(self.parameters[optional])))
        return b'Digest ' + b', '.join(b'%b=%b' % value for value in values)


def best_challenge(headers: Fields, accepted: tuple[str, ...]) -> Challenge | None:
    challenges = [Challenge(parameters) for name, value in headers
                  if name == b'www-authenticate' for parameters in digest_parameters(value)]
    ranked = [(challenge.rank(accepted), challenge) for challenge in challenges]
    usable = [item for item in ranked if item[0] >= 0]
    return min(usable, key=lambda item: item[0])[1] if usable else None


def digest_parameters(value: bytes) -> Iterator[dict[bytes, bytes]]:
    """Those of each challenge for digest."""
    challenges: list[tuple[bytes, dict[bytes, bytes]]] = []
    for scheme, name, given in PARAMETER.findall(value):
        if scheme:
            challenges.append((scheme.lower(), {}))
        if challenges:
            challenges[-1][1].setdefault(name.lower(), unquoted(given))
    return (parameters for scheme, parameters in challenges if scheme == b'digest')


def quoted(value: bytes) -> bytes:
    return b'"' + re.sub(rb'(["\\])', rb'\\\1', value) + b'"'


def unquoted(value: bytes) -> bytes:
    return re.sub(rb'\\(.)', rb'\1', value[1:-1]) if value.startswith(b'"') else value


# --------------------------------------------------------------------------------------- URLs

URL = re.compile(r'(https?)://([^/?#]*)([^#]*)', re.IGNORECASE)
AUTHORITY = re.compile(r'(\[[^\[\]@]+\]|[^:\[\]@]+)(?::([0-9]*))?')

# What may not stand in a target (RFC 3986 3.3, 3.4), but control characters: those are left to
# lowhaio to refuse.
TO_ENCODE = re.compile(
    r"%(?![0-9A-Fa-f]{2})|[^A-Za-z0-9\-._~!$&'()*+,;=:@/?%\x00-\x1f\x7f-\x9f]")


def origin_of(url: str) -> str | None:
    """'scheme://host:port', or None where lowhaio would refuse the URL. Two forms of one host
    that differ here count as two origins."""
    match = URL.match(url) if isinstance(url, str) else None
    parts = AUTHORITY.fullmatch(match[2]) if match is not None else None
    if match is None or parts is None:
        return None
    scheme = match[1].lower()
    host, digits = parts.groups()
    port = (digits or '').lstrip('0') or {'http': '80', 'https': '443'}[scheme]
    return f'{scheme}://{host.lower().removesuffix(".")}:{port}'


def bound_to(origin: str | None) -> Callable[[str], bool]:
    """If a URL is of that origin. None stands for that of the first URL."""
    bound = None
    if origin is not None:
        bound = origin_of(origin)
        if bound is None or not re.fullmatch('[^/]*//[^/?#]*/?', origin):
            raise ValueError("origin must be a scheme and a host, like 'https://example.com'")

    def is_for_us(url: str) -> bool:
        nonlocal bound
        asked = origin_of(url)
        bound = bound or asked
        return asked is not None and asked == bound

    return is_for_us


def encoded(url: str, params: Any) -> tuple[str, bytes]:
    """The URL with the params, and its target, without anything left for lowhaio to encode: what
    is hashed must be what is sent."""
    match = URL.match(url)
    assert match is not None  # it has an origin
    scheme, authority, target = match.groups()
    target = target if target.startswith('/') else f'/{target}'
    target = TO_ENCODE.sub(lambda match: quote(match[0], safe=''), target)
    query = urlencode(params, doseq=True)
    if query:
        separator = '?' if '?' not in target else '' if target.endswith(('?', '&')) else '&'
        target = f'{target}{separator}{query}'
    return f'{scheme}://{authority}{target}', target.encode()


# ------------------------------------------------------------------------- what the caller gave

def check_callable(function: object) -> None:
    if not callable(function):
        raise TypeError(f'a function is needed, got {type(function).__name__}')


def checked_credentials(username: str, password: str) -> tuple[bytes, bytes]:
    for value in (username, password):
        if not isinstance(value, str):
            raise TypeError(f'username and password must be str, got {type(value).__name__}')
        if re.search(r'[\x00-\x1f\x7f]', value):
            raise ValueError('username and password must not have control characters')
    return username.encode(), password.encode()


def has_authorization(headers: Any) -> bool:
    """Then they are sent as they are. So is what is wrong with them, for lowhaio to refuse."""
    try:
        return any(name.lower() == b'authorization' for name, _ in headers)
    except (AttributeError, TypeError, ValueError):
        return True


def not_sent(method: bytes, url: str, why: str) -> HttpConnectionError:
    name = method.decode('latin-1') if isinstance(method, bytes) else type(method).__name__
    return HttpConnectionError(f'{name} {origin_of(url)}, {why}')


def reiterable(values: Any) -> Any:
    """What can be iterated over only once would be missing in the second request."""
    return tuple(values) if isinstance(values, Iterator) else values
