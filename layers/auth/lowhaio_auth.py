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
import inspect
import re
import secrets
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, TypeVar, cast
from urllib.parse import quote

from lowhaio import (
    HttpConnectionError,
    HttpDataError,
    HttpError,
    canonical_host,
    empty_async_iterator,
    encode_params,
    repeatable,
)

# Bytes of a 401's own body that are read, so that its connection can be used again. Each read
# counts as a kibibyte more: the smallest takes its time, too.
MAX_DRAINED = 64 * 1024

# Seconds for that. A new connection costs less than to wait any longer.
DRAIN_TIMEOUT = 1

# Challenges that one request answers. All but the first have to say that the nonce was stale, as
# they do when many requests log in at once, and the server knows few nonces, or takes each once.
MAX_CHALLENGES = 5

# How many more it answers because those of other requests had come in between.
MAX_OVERTAKEN = 20

# Seconds that a request waits for others that log in, before it does so beside them: they may be
# slow, or even wait for this very one, if it is made by the body of one of them.
LOGIN_TIMEOUT = 1

Fields = tuple[tuple[bytes, bytes], ...]
Response = tuple[bytes, Fields, Any]
# A layer returns the type that it is given: the same arguments, the same body.
AnyRequest = TypeVar('AnyRequest', bound=Callable[..., Awaitable[Response]])
AnyError = TypeVar('AnyError', bound=HttpError)
GetToken = Callable[[], str | Awaitable[str]]


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

    check_callable(request)
    is_for_us = bound_to(origin)

    async def basic_request(
            method: bytes, url: str, params: Any = (), headers: Any = (),
            body: Any = empty_async_iterator, body_args: Any = (), body_kwargs: Any = (),
            **kwargs: Any) -> Response:
        headers = reiterable(headers)
        if is_for_us(url) and not has_authorization(headers):
            headers = (*headers, (b'authorization', value))
        return await request(
            method, url, params=params, headers=headers, body=body, body_args=body_args,
            body_kwargs=body_kwargs, **kwargs)

    return cast(AnyRequest, basic_request)


def bearer(request: AnyRequest, get_token: GetToken, *, origin: str | None = None,
           on_refused: Callable[[str], object] | None = None) -> AnyRequest:
    """A `request` with a token (RFC 6750), which `get_token()` returns as str.

    It is called for each request to `origin`, or else to that of the first request. After a 401
    it is called once more, and if the token is another one, the request is made again. Requests
    whose token was refused at the same time share that call.

    `on_refused(token)` is called before, with the token that was refused, so that whoever keeps
    it can forget it. Both may be coroutine functions.
    """
    check_callable(request)
    check_callable(get_token)
    if on_refused is not None:
        check_callable(on_refused)
    is_for_us = bound_to(origin)
    tokens = Tokens(get_token, on_refused)

    async def bearer_request(
            method: bytes, url: str, params: Any = (), headers: Any = (),
            body: Any = empty_async_iterator, body_args: Any = (), body_kwargs: Any = (),
            **kwargs: Any) -> Response:
        headers, body_args, body_kwargs = (
            reiterable(headers), reiterable(body_args), reiterable(body_kwargs))
        if not is_for_us(url) or has_authorization(headers):
            return await request(
                method, url, params=params, headers=headers, body=body, body_args=body_args,
                body_kwargs=body_kwargs, **kwargs)
        body = repeatable(body)

        async def request_with(token: str) -> Response:
            return await request(
                method, url, params=params, body=body, body_args=body_args,
                headers=(*headers, (b'authorization', b'Bearer ' + token.encode())),
                body_kwargs=body_kwargs, **kwargs)

        renewals = tokens.renewals
        try:
            token = await tokens.get()
        except Exception as cause:
            # Its text may have what is secret.
            raise failure(HttpConnectionError, method, url,
                          f'get_token failed: {type(cause).__name__}') from cause
        code, fields, response_body = await request_with(token)
        if code != b'401':
            return code, fields, response_body
        # Before a token is asked for: that may need the connection.
        chunks = await drain(response_body)
        try:
            new_token = await tokens.renew(token, renewals)
        except Exception as cause:
            raise after_401(failure(HttpDataError, method, url,
                                    f'get_token failed: {type(cause).__name__}')) from cause
        if new_token == token and chunks is not None:
            return code, fields, KeptBody(response_body, chunks)
        try:
            return await request_with(new_token)
        except HttpConnectionError as error:
            raise after_401(error) from error

    return cast(AnyRequest, bearer_request)


class Tokens:
    """Where they come from, and the one that took the place of the last that was refused."""

    __slots__ = ('get_token', 'on_refused', 'lock', 'renewals', 'refused', 'renewed')

    def __init__(self, get_token: GetToken, on_refused: Callable[[str], object] | None) -> None:
        self.get_token = get_token
        self.on_refused = on_refused
        self.lock = asyncio.Lock()
        self.renewals = 0
        self.refused: str | None = None
        self.renewed = ''

    async def get(self) -> str:
        given = self.get_token()
        token = await given if inspect.isawaitable(given) else given
        if not re.fullmatch(r'[A-Za-z0-9\-._~+/]+=*', token):
            raise ValueError('get_token must return a token without spaces or the like')
        return token

    async def renew(self, token: str, renewals: int) -> str:
        """One to use instead. Asked for once, for all that were sent before it was there.

        `renewals` is how many there were before the request. `get_token` may return the token of
        whoever makes the request, so what took the place of another's is not for this one.
        """
        async with self.lock:
            if self.renewals == renewals or self.refused != token:
                if self.on_refused is not None:
                    forgetting = self.on_refused(token)
                    if inspect.isawaitable(forgetting):
                        await forgetting
                self.renewed = await self.get()
                self.refused = token
                self.renewals += 1
            return self.renewed


class KeptBody:
    """The body of a response, of which all has been read before."""

    __slots__ = ('_body', '_chunks')

    def __init__(self, body: Any, chunks: list[bytes]) -> None:
        self._body = body
        self._chunks = chunks

    def __aiter__(self) -> KeptBody:
        return self

    async def __anext__(self) -> bytes:
        if not self._chunks:
            raise StopAsyncIteration
        return self._chunks.pop(0)

    async def aclose(self) -> None:
        self._chunks.clear()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)


# -------------------------------------------------------------------------------------- digest
#
# RFC 7616, and RFC 2069 where a server knows no other. The challenge of the last 401 is answered
# in all later requests, so that only the first one, and one after the nonce has become stale, is
# made twice.
#
# When many requests log in at once, each gets a challenge of its own, and answers that. This is
# enough where a nonce can be used only once, or its counts have to come in their order. It fails
# where the server knows only the nonce that it has given last, such as one in a session: a 401 to
# one request makes the nonces of the others stale. So a request that is refused once more waits
# for the others that were, and answers the last challenge that came: one after the other.

# With their names in hashlib, by preference. SHA-512-256 is no stronger, and its servers are more
# likely to be wrong: the example of RFC 7616 3.9.2 itself is.
HASHES = {'SHA-256': 'sha256', 'SHA-512-256': 'sha512_256', 'MD5': 'md5'}

# RFC 9110 11.6.1: "scheme name=value, name=value, scheme name=value". A word without a value is a
# scheme. Commas may be missing, or too many. The token68 of another scheme makes words and
# parameters that nobody asks for. It does not go back.
PARAMETER = re.compile(
    rb'([^ \t,="]++)(?:[ \t]*+=[ \t]*+(?:([^ \t,"]++)|"((?:[^"\\]|\\.)*+)("?)))?', re.DOTALL)


def digest(request: AnyRequest, username: str, password: str, *, origin: str | None = None,
           algorithms: Iterable[str] = tuple(HASHES)) -> AnyRequest:
    """A `request` that proves that it knows a password (RFC 7616), without sending that.

    It does so to `origin` only, `'https://example.com'` say, or else to that of the first
    request. `algorithms` are those accepted, and the first of them that a server offers is used.
    SHA-512-256 is accepted only where Python has it from its OpenSSL.
    """
    check_callable(request)
    name, secret = checked_credentials(username, password)
    accepted = checked_algorithms(algorithms)
    is_for_us = bound_to(origin)
    # That of the last 401.
    known: Challenge | None = None
    login = asyncio.Lock()

    async def digest_request(
            method: bytes, url: str, params: Any = (), headers: Any = (),
            body: Any = empty_async_iterator, body_args: Any = (), body_kwargs: Any = (),
            **kwargs: Any) -> Response:
        nonlocal known
        headers, body_args, body_kwargs = (
            reiterable(headers), reiterable(body_args), reiterable(body_kwargs))
        body = repeatable(body)
        is_ours = is_for_us(url) and not has_authorization(headers)
        # That of the last 401 to this very request, how many there were, and how many of these
        # may be due to the 401s of others.
        own: Challenge | None = None
        challenges = overtaken = 0
        has_login = False
        try:
            while True:
                answered = own if own and not has_login else known if is_ours else None
                sent = {'url': url, 'params': params, 'headers': headers}
                try:
                    if answered is not None:
                        sent = await with_answer(
                            answered, name, secret, method, sent, body, body_args, body_kwargs)
                    code, fields, response_body = await request(
                        method, **sent, body=body, body_args=body_args, body_kwargs=body_kwargs,
                        **kwargs)
                except HttpConnectionError as error:
                    if challenges:
                        raise after_401(error) from error
                    raise
                if answered is not None:
                    answered.take_next_nonce(fields)
                new = best_challenge(fields, accepted) if is_ours and code == b'401' else None
                is_last = answered is known
                # A last nonce that is not said to be stale tells that the password is wrong.
                if new is None or own and is_last and not new.is_stale \
                        or challenges - overtaken == MAX_CHALLENGES or overtaken == MAX_OVERTAKEN:
                    return code, fields, response_body
                own = known = new
                challenges += 1
                overtaken += not is_last
                if has_login and not is_last:
                    # Others are still being challenged: it is the turn of the next that waits.
                    login.release()
                    has_login = False
                await drain(response_body)
                if challenges > 1 and not has_login:
                    has_login = await acquire(login)
        finally:
            if has_login:
                login.release()

    return cast(AnyRequest, digest_request)


class Challenge:
    """What a server asks for, and how often its nonce has been used."""

    __slots__ = ('parameters', 'algorithm', 'is_session', 'qop', 'nonce', 'cnonce', 'count',
                 'secret')

    def __init__(self, parameters: dict[bytes, bytes]) -> None:
        self.parameters = parameters
        name = parameters.get(b'algorithm', b'MD5').decode('latin-1').upper()
        self.algorithm = name.removesuffix('-SESS')
        self.is_session = name != self.algorithm
        offered = re.findall(rb'[^ \t,]+', parameters.get(b'qop', b'').lower())
        # Empty in RFC 2069, which has none, and None if it is unknown. With auth-int the body is
        # read once more, to no avail for whoever trusts TLS.
        self.qop = next((qop for qop in (b'auth', b'auth-int') if qop in offered),
                        None if offered else b'')
        self.nonce = parameters.get(b'nonce', b'')
        self.cnonce = secrets.token_hex(16).encode()
        self.count = 0
        self.secret: bytes | None = None

    def rank(self, accepted: tuple[str, ...]) -> int:
        """Its place among them, or -1 if it can not be answered."""
        is_whole = self.qop is not None and {b'realm', b'nonce'} <= self.parameters.keys()
        return accepted.index(self.algorithm) if is_whole and self.algorithm in accepted else -1

    @property
    def is_stale(self) -> bool:
        return self.parameters.get(b'stale', b'').lower() == b'true'

    def hash(self, *parts: bytes) -> bytes:
        return new_hash(self.algorithm, b':'.join(parts)).hexdigest().encode()

    async def hash_content(self, headers: Fields, body: Any, body_args: Any,
                           body_kwargs: Any) -> tuple[bytes, ...]:
        """What auth-int has more than auth (RFC 7616 3.4.3). The body is read for that."""
        if self.qop != b'auth-int':
            return ()
        if any(name.lower() == b'transfer-encoding' for name, _ in headers):
            raise ValueError('headers must not have transfer-encoding when the server asks for '
                             'auth-int: what is hashed has no framing')
        content_hash = new_hash(self.algorithm)
        chunks = aiter(body(*body_args, **dict(body_kwargs)))
        try:
            async for chunk in chunks:
                content_hash.update(chunk)
                # For other tasks: the chunks of a body may all be there at once.
                await asyncio.sleep(0)
        finally:
            if hasattr(chunks, 'aclose'):
                await chunks.aclose()
        return content_hash.hexdigest().encode(),

    def answer(self, name: bytes, password: bytes, method: bytes, target: bytes,
               content_hash: tuple[bytes, ...]) -> bytes:
        """RFC 7616 3.4, the value of the field."""
        realm, nonce, qop = self.parameters[b'realm'], self.nonce, self.qop
        if self.secret is None:
            self.secret = self.hash(name, realm, password)
            if self.is_session:
                self.secret = self.hash(self.secret, nonce, self.cnonce)
        of_request = self.hash(method, target, *content_hash)
        self.count += 1
        count = b'%08x' % self.count
        response = self.hash(self.secret, nonce, count, self.cnonce, qop, of_request) if qop \
            else self.hash(self.secret, nonce, of_request)
        is_hashed = self.parameters.get(b'userhash', b'').lower() == b'true'
        values = [(b'username', quoted(self.hash(name, realm) if is_hashed else name)),
                  (b'realm', quoted(realm)), (b'nonce', quoted(nonce)), (b'uri', quoted(target)),
                  (b'response', quoted(response))]
        if qop:
            values += [(b'qop', qop), (b'nc', count)]
        # RFC 2069 has none, but without it no server can know what a session's secret is.
        if qop or self.is_session:
            values.append((b'cnonce', quoted(self.cnonce)))
        for optional, form in ((b'algorithm', bytes), (b'opaque', quoted)):
            if optional in self.parameters:
                values.append((optional, form(self.parameters[optional])))
        if is_hashed:
            values.append((b'userhash', b'true'))
        return b'Digest ' + b', '.join(b'%b=%b' % value for value in values)

    def take_next_nonce(self, fields: Fields) -> None:
        """RFC 7616 3.5. A session's secret stays that of its first nonce (3.4.2)."""
        for name, value in fields:
            if name == b'authentication-info':
                for match in PARAMETER.finditer(value):
                    nonce = value_of(match)
                    if nonce and match[1].lower() == b'nextnonce':
                        self.nonce = nonce
                        self.count = 0


async def with_answer(
        challenge: Challenge, name: bytes, secret: bytes, method: bytes, sent: dict[str, Any],
        body: Any, body_args: Any, body_kwargs: Any) -> dict[str, Any]:
    """URL, params and headers of a request, with the answer to the challenge."""
    url, headers = sent['url'], sent['headers']
    try:
        whole_url, target = encoded(url, sent['params'])
        content_hash = await challenge.hash_content(headers, body, body_args, body_kwargs)
        answer = challenge.answer(name, secret, method, target, content_hash)
    except Exception as cause:
        raise failure(HttpConnectionError, method, url,
                      f'refused: {str(cause) or type(cause).__name__}') from cause
    return {'url': whole_url, 'headers': (*headers, (b'authorization', answer))}


async def acquire(lock: asyncio.Lock) -> bool:
    """Whether it was free in time."""
    try:
        async with asyncio.timeout(LOGIN_TIMEOUT):
            return await lock.acquire()
    except TimeoutError:
        return False


def best_challenge(headers: Fields, accepted: tuple[str, ...]) -> Challenge | None:
    challenges = [Challenge(parameters) for name, value in headers
                  if name == b'www-authenticate' for parameters in digest_parameters(value)]
    ranked = [(challenge.rank(accepted), challenge) for challenge in challenges]
    usable = [item for item in ranked if item[0] >= 0]
    return min(usable, key=lambda item: item[0])[1] if usable else None


def digest_parameters(value: bytes) -> list[dict[bytes, bytes]]:
    """Those of each challenge for digest."""
    challenges: list[tuple[bytes, dict[bytes, bytes]]] = []
    for match in PARAMETER.finditer(value):
        name, given = match[1].lower(), value_of(match)
        if given is not None and challenges:
            challenges[-1][1].setdefault(name, given)
        elif given is None and match[3] is None:
            challenges.append((name, {}))
        elif given is None and challenges:
            # A quoted string without end: whatever else there was, it is lost.
            challenges.pop()
    return [parameters for scheme, parameters in challenges if scheme == b'digest']


def value_of(match: re.Match[bytes]) -> bytes | None:
    """None for a word without a value, and for a quoted string without end."""
    if match[2] is not None or not match[4]:
        return match[2]
    return re.sub(rb'\\(.)', rb'\1', match[3])


def new_hash(algorithm: str, data: bytes = b'') -> hashlib._Hash:
    return hashlib.new(HASHES[algorithm], data, usedforsecurity=False)


def quoted(value: bytes) -> bytes:
    return b'"' + re.sub(rb'(["\\])', rb'\\\1', value) + b'"'


# --------------------------------------------------------------------------------------- URLs

URL = re.compile(r'(https?)://([^/?#]*)([^#]*)', re.IGNORECASE)
AUTHORITY = re.compile(r'(\[[^\[\]@]+\]|[^:\[\]@]+)(?::([0-9]*))?')

# What may not stand in a target (RFC 3986 3.3, 3.4), but control characters: those are left to
# lowhaio to refuse.
TO_ENCODE = re.compile(
    r"%(?![0-9A-Fa-f]{2})|[^A-Za-z0-9\-._~!$&'()*+,;=:@/?%\x00-\x1f\x7f-\x9f]")


def origin_of(url: str) -> str | None:
    """'scheme://host:port', or None where lowhaio would refuse the URL. Two forms of an ASCII host
    that differ here count as two origins."""
    match = URL.match(url) if isinstance(url, str) else None
    parts = AUTHORITY.fullmatch(match[2]) if match is not None else None
    if match is None or parts is None:
        return None
    scheme = match[1].lower()
    host, digits = parts.groups()
    try:
        # To compare other names in lower case is not enough: it takes some for others.
        host = host.lower().removesuffix('.') if host.isascii() else canonical_host(host)
    except ValueError:
        return None
    port = (digits or '').lstrip('0') or {'http': '80', 'https': '443'}[scheme]
    return f'{scheme}://{host}:{port}'


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
    query = encode_params(params)
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


def checked_algorithms(algorithms: Iterable[str]) -> tuple[str, ...]:
    """Those that Python has here."""
    given = tuple(algorithms)
    if not given or not set(given) <= set(HASHES):
        raise ValueError(f'algorithms must be some of {", ".join(HASHES)}, got {given!r}')
    accepted = tuple(filter(is_available, given))
    if not accepted:
        raise ValueError(f'this Python, with its OpenSSL, has none of the algorithms {given!r}')
    return accepted


def is_available(algorithm: str) -> bool:
    try:
        new_hash(algorithm)
    except ValueError:
        return False
    return True


def failure(kind: type[AnyError], method: bytes, url: str, why: str) -> AnyError:
    name = method.decode('latin-1') if isinstance(method, bytes) else type(method).__name__
    return kind(f'{name} {origin_of(url)}, {why}')


def after_401(error: HttpError) -> HttpDataError:
    """Whoever retries must know that the request has reached its server, and was refused there."""
    answered = HttpDataError(f'after a first answer, 401: {error}')
    answered.reused = error.reused
    answered.response_started = True
    return answered


def reiterable(values: Any) -> Any:
    """What can be iterated over only once would be missing in the second request."""
    # Nearly always. To look at the class alone costs least.
    if type(values) is tuple:
        return values
    return tuple(values) if isinstance(values, Iterator) else values


async def drain(body: Any) -> list[bytes] | None:
    """The chunks of a body, or None if they were too many, too slow or cut off."""
    chunks = []
    left = MAX_DRAINED
    try:
        with contextlib.suppress(HttpError, TimeoutError):
            async with asyncio.timeout(DRAIN_TIMEOUT):
                async for chunk in body:
                    chunks.append(chunk)
                    left -= len(chunk) + 1024
                    if left < 0:
                        break
                else:
                    return chunks
    finally:
        await body.aclose()
    return None
