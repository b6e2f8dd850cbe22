"""Authenticates requests to one origin: layers around the `request` of lowhaio.

::

    request, close = Pool()
    request = basic(request, 'user', 'password', origin='https://example.com')
    code, headers, body = await request(b'GET', 'https://example.com/')

`basic`, `bearer` and `digest` add an `authorization` field to the requests that go to their
origin, and to no other. They hold the credentials, the last token that took the place of a refused
one, and the last challenge of a server. Digest is written here because the libraries that have it
and are still maintained are HTTP clients of their own.
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
    Fields,
    HttpConnectionError,
    HttpDataError,
    HttpError,
    canonical_host,
    empty_async_iterator,
    encode_params,
    repeatable,
)

__all__ = ['Challenge', 'basic', 'bearer', 'best_challenge', 'digest']

# How many bytes of a 401's own body are read so that its connection can be used again. Each chunk
# counts as 1 KiB more than it holds, because even the smallest read takes time.
MAX_DRAINED = 64 * 1024

# How many seconds that may take. To wait any longer would cost more than a new connection.
DRAIN_TIMEOUT = 1

# How many challenges one request answers. All but the first must say that the nonce was stale.
# Servers say so again and again when many requests log in at once and they remember few nonces,
# or accept each nonce only once.
MAX_CHALLENGES = 5

# How many more challenges it answers because a challenge to another request came in between.
MAX_OVERTAKEN = 20

# How many seconds a request waits for other requests that log in, before it logs in beside them.
# They may be slow. They may even wait for this very request, if the body of one of them made it.
LOGIN_TIMEOUT = 1

Response = tuple[bytes, Fields, Any]
# A layer returns a function of the type that it was given: same arguments, same response.
AnyRequest = TypeVar('AnyRequest', bound=Callable[..., Awaitable[Response]])
AnyError = TypeVar('AnyError', bound=HttpError)
GetToken = Callable[[], str | Awaitable[str]]
IsForUs = Callable[[str, Any], bool]


# --------------------------------------------------------------------------- basic and bearer

def basic(request: AnyRequest, username: str, password: str,
          *, origin: str | None = None) -> AnyRequest:
    """A `request` that sends a user name and a password (RFC 7617).

    - `username`, `password`: sent as UTF-8. Neither may have control characters, and the user
      name may not have a colon: ValueError.
    - `origin`: the only one that gets them, such as `'https://example.com'`. None stands for the
      origin of the first request.

    Requests to other origins, and those that have an `authorization` already, are sent as they
    are.
    """
    name, secret = checked_credentials(username, password)
    if b':' in name:
        raise ValueError('username must not have a colon')
    field = (b'authorization', b'Basic ' + b64encode(name + b':' + secret))

    check_callable(request)
    is_for_us = bound_to(origin)

    async def basic_request(
            method: bytes, url: str, params: Any = (), headers: Any = (),
            body: Any = empty_async_iterator, body_args: Any = (), body_kwargs: Any = (),
            **kwargs: Any) -> Response:
        # The same check as in `reiterable`, without the call of it.
        if type(headers) is not tuple:
            headers = reiterable(headers)
        if is_for_us(url, kwargs.get('target')) and not (headers and has_authorization(headers)):
            headers = (*headers, field)
        # Most requests have no other keywords, and a call with ** takes longer.
        return await (request(
            method, url, params=params, headers=headers, body=body, body_args=body_args,
            body_kwargs=body_kwargs, **kwargs,
        ) if kwargs else request(
            method, url, params=params, headers=headers, body=body, body_args=body_args,
            body_kwargs=body_kwargs))

    return cast(AnyRequest, basic_request)


def bearer(request: AnyRequest, get_token: GetToken, *, origin: str | None = None,
           on_refused: Callable[[str], object] | None = None) -> AnyRequest:
    """A `request` that sends a token (RFC 6750).

    - `get_token()` returns the token as str. It is called for each request to the origin. After a
      401 it is called once more, and if it then returns another token, the request is made again.
      Requests whose token was refused at the same time share that call.
    - `origin`: the only one that gets the token, such as `'https://example.com'`. None stands for
      the origin of the first request.
    - `on_refused(token)` is called before the second call of `get_token`, so that whoever keeps
      the token can forget it.

    Both functions may be coroutine functions. If `get_token` fails, an `HttpConnectionError` is
    raised from its exception, and an `HttpDataError` after a 401. Requests to other origins, and
    those that have an `authorization` already, are sent as they are.
    """
    check_callable(request)
    check_callable(get_token)
    if on_refused is not None:
        check_callable(on_refused)
    return with_token(request, Tokens(get_token, on_refused), bound_to(origin))


def with_token(request: AnyRequest, tokens: Tokens, is_for_us: IsForUs) -> AnyRequest:
    async def bearer_request(
            method: bytes, url: str, params: Any = (), headers: Any = (),
            body: Any = empty_async_iterator, body_args: Any = (), body_kwargs: Any = (),
            **kwargs: Any) -> Response:
        # The same check as in `reiterable`, without the call of it.
        if type(headers) is not tuple:
            headers = reiterable(headers)
        if not is_for_us(url, kwargs.get('target')) or headers and has_authorization(headers):
            return await request(
                method, url, params=params, headers=headers, body=body, body_args=body_args,
                body_kwargs=body_kwargs, **kwargs)
        if body is not empty_async_iterator:
            body = repeatable(body)
            body_args, body_kwargs = reiterable(body_args), reiterable(body_kwargs)

        def request_with(token: str) -> Awaitable[Response]:
            sent = (*headers, (b'authorization', b'Bearer ' + token.encode()))
            # Most requests have no other keywords, and a call with ** takes longer.
            return request(
                method, url, params=params, headers=sent, body=body, body_args=body_args,
                body_kwargs=body_kwargs, **kwargs,
            ) if kwargs else request(
                method, url, params=params, headers=sent, body=body, body_args=body_args,
                body_kwargs=body_kwargs)

        renewals = tokens.renewals
        try:
            token = await tokens.get()
        except Exception as cause:
            raise token_failure(HttpConnectionError, method, url, cause) from cause
        code, fields, response_body = await request_with(token)
        if code != b'401':
            return code, fields, response_body
        # The body is read first, since asking for a token may need the connection.
        chunks = await drain(response_body)
        try:
            new_token = await tokens.renew(token, renewals)
        except Exception as cause:
            raise after_401(token_failure(HttpDataError, method, url, cause)) from cause
        if new_token == token and chunks is not None:
            return code, fields, KeptBody(response_body, chunks)
        try:
            return await request_with(new_token)
        except HttpConnectionError as error:
            raise after_401(error) from error

    return cast(AnyRequest, bearer_request)


# The grammar of a token (RFC 6750 2.1).
TOKEN = re.compile(r'[A-Za-z0-9\-._~+/]+=*')


class Tokens:
    """Gets tokens, and remembers the one that took the place of the last refused token."""

    __slots__ = ('get_token', 'on_refused', 'lock', 'renewals', 'refused', 'renewed')

    def __init__(self, get_token: GetToken, on_refused: Callable[[str], object] | None) -> None:
        self.get_token = get_token
        self.on_refused = on_refused
        # Held while a token is renewed.
        self.lock = asyncio.Lock()
        # How many times that was done.
        self.renewals = 0
        # The token that was renewed last, and what took its place.
        self.refused: str | None = None
        self.renewed = ''

    def __repr__(self) -> str:
        return f'<Tokens renewals={self.renewals} is_renewing={self.lock.locked()}>'

    async def get(self) -> str:
        given = self.get_token()
        token = given if isinstance(given, str) or not inspect.isawaitable(given) else await given
        if TOKEN.fullmatch(token) is None:
            raise ValueError('get_token must return a token without spaces or the like')
        return token

    async def renew(self, token: str, renewals: int) -> str:
        """The token to use instead of this one, which was refused.

        `renewals` is what `self.renewals` was before the request was made. If this token has been
        renewed since then, the result is shared. A renewal of another token does not count:
        `get_token` may return a token of whoever makes the request.
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
    """The body of a response, all of which has been read already.

    It passes on all other attributes of the body that it was read from.
    """

    __slots__ = ('_body', '_chunks')

    def __init__(self, body: Any, chunks: list[bytes]) -> None:
        self._body = body
        # What has not been handed out yet.
        self._chunks = chunks

    def __repr__(self) -> str:
        return f'<KeptBody {sum(map(len, self._chunks))} bytes held of {self._body!r}>'

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
# RFC 7616, and RFC 2069 where a server knows nothing newer. All requests answer the challenge of
# the last 401. So a request is made twice only if it is the first one, or the first one after the
# nonce has become stale.
#
# What makes this hard is many requests that log in at once. At first each of them gets a challenge
# of its own and answers that one. This is enough if the server takes each nonce only once, or
# wants the counts of a nonce in their order. It is not enough if the server knows only the nonce
# that it gave last, for example because it keeps it in a session: then a 401 to one request makes
# the nonces of all others stale. So a request that is refused once more waits for a lock that the
# refused requests share, and then answers the last challenge that came to any of them.

# The names of the algorithms in hashlib, the preferred ones first. SHA-512-256 is no stronger than
# SHA-256, and servers are more likely to get it wrong: the example of RFC 7616 3.9.2 itself does.
HASHES = {'SHA-256': 'sha256', 'SHA-512-256': 'sha512_256', 'MD5': 'md5'}

# The field is "scheme name=value, name=value, scheme name=value" (RFC 9110 11.6.1). This matches
# one word with its value, if it has one. A word without a value is a scheme. There may be too few
# commas, or too many. What another scheme has in place of parameters, a token68, is read as words
# and parameters that do no harm. The quantifiers are possessive, so that time is linear.
PARAMETER = re.compile(
    rb'([^ \t,="]++)(?:[ \t]*+=[ \t]*+(?:([^ \t,"]++)|"((?:[^"\\]|\\.)*+)("?)))?', re.DOTALL)


def digest(request: AnyRequest, username: str, password: str, *, origin: str | None = None,
           algorithms: Iterable[str] = tuple(HASHES)) -> AnyRequest:
    """A `request` that proves that it knows a password, without sending it (RFC 7616).

    - `username`, `password`: str without control characters. Otherwise ValueError is raised.
    - `origin`: the only one that gets the proof, such as `'https://example.com'`. None stands for
      the origin of the first request.
    - `algorithms`: those that are accepted: `'SHA-256'`, `'SHA-512-256'` and `'MD5'`. The first of
      them that a server offers is used. One that Python's OpenSSL does not have is left out, and
      ValueError is raised if none is left.

    A request that is answered with 401 and a challenge is made again with the proof, for which its
    body function is called again. Requests to other origins, and those that have an
    `authorization` already, are sent as they are.
    """
    check_callable(request)
    name, secret = checked_credentials(username, password)
    return with_proof(
        request, Login(name, secret, checked_algorithms(algorithms)), bound_to(origin))


def with_proof(request: AnyRequest, login: Login, is_for_us: IsForUs) -> AnyRequest:
    async def digest_request(
            method: bytes, url: str, params: Any = (), headers: Any = (),
            body: Any = empty_async_iterator, body_args: Any = (), body_kwargs: Any = (),
            **kwargs: Any) -> Response:
        # The same check as in `reiterable`, without the call of it.
        if type(headers) is not tuple:
            headers = reiterable(headers)
        if body is not empty_async_iterator:
            body = repeatable(body)
            body_args, body_kwargs = reiterable(body_args), reiterable(body_kwargs)
        target = kwargs.get('target')
        if not is_for_us(url, target) or headers and has_authorization(headers):
            return await request(
                method, url, params=params, headers=headers, body=body, body_args=body_args,
                body_kwargs=body_kwargs, **kwargs)
        turn = Turn(login)
        try:
            while True:
                challenge = turn.challenge()
                sent = {'url': url, 'params': params, 'headers': headers}
                try:
                    if challenge is not None:
                        sent = await with_answer(
                            challenge, login, method, target, sent, body, body_args, body_kwargs)
                    code, fields, response_body = await request(
                        method, **sent, body=body, body_args=body_args, body_kwargs=body_kwargs,
                        **kwargs)
                except HttpConnectionError as error:
                    if turn.count:
                        raise after_401(error) from error
                    raise
                if not turn.is_challenged(challenge, code, fields):
                    return code, fields, response_body
                await drain(response_body)
                await turn.wait()
        finally:
            turn.end()

    return cast(AnyRequest, digest_request)


class Login:
    """What all requests of one `digest` share: who logs in, and the last challenge."""

    __slots__ = ('name', 'password', 'algorithms', 'last', 'lock')

    def __init__(self, name: bytes, password: bytes, algorithms: tuple[str, ...]) -> None:
        self.name = name
        self.password = password
        self.algorithms = algorithms
        # The challenge of the last 401.
        self.last: Challenge | None = None
        # Held by one request at a time of those that were refused more than once.
        self.lock = asyncio.Lock()

    def __repr__(self) -> str:
        return f'<Login last={self.last!r} is_locked={self.lock.locked()}>'


class Turn:
    """One request, and the challenges that it has got."""

    __slots__ = ('login', 'own', 'count', 'overtaken', 'has_lock')

    def __init__(self, login: Login) -> None:
        self.login = login
        # The last challenge that came to this very request.
        self.own: Challenge | None = None
        # How many came, and how many of these may be due to challenges to other requests.
        self.count = self.overtaken = 0
        self.has_lock = False

    def __repr__(self) -> str:
        return f'<Turn count={self.count} overtaken={self.overtaken} has_lock={self.has_lock}>'

    def challenge(self) -> Challenge | None:
        """The challenge that the next attempt answers, if there is one."""
        return self.own if self.own and not self.has_lock else self.login.last

    def is_challenged(self, answered: Challenge | None, code: bytes, fields: Fields) -> bool:
        """Whether the request must be made again after this response.

        `answered` is the challenge that the request has answered.
        """
        if answered is not None:
            answered.take_next_nonce(fields)
        new = best_challenge(fields, self.login.algorithms) if code == b'401' else None
        is_last = answered is self.login.last
        # If the last nonce was refused, and is not said to be stale, the password is wrong.
        if new is None or self.own and is_last and not new.is_stale \
                or self.count - self.overtaken == MAX_CHALLENGES \
                or self.overtaken == MAX_OVERTAKEN:
            return False
        self.own = self.login.last = new
        self.count += 1
        self.overtaken += not is_last
        if not is_last:
            # Other requests are still being challenged, so the next one that waits has its turn.
            self.end()
        return True

    async def wait(self) -> None:
        """From the second challenge on, wait for the others that were challenged."""
        if self.count > 1 and not self.has_lock:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOGIN_TIMEOUT):
                    self.has_lock = await self.login.lock.acquire()

    def end(self) -> None:
        if self.has_lock:
            self.login.lock.release()
            self.has_lock = False


class Challenge:
    """What a server asks for, and how often its nonce has been used.

    `parameters` are those of the field, by lower-case name.
    """

    __slots__ = ('parameters', 'algorithm', 'is_session', 'qop', 'nonce', 'cnonce', 'count',
                 'secret')

    def __init__(self, parameters: dict[bytes, bytes]) -> None:
        self.parameters = parameters
        name = parameters.get(b'algorithm', b'MD5').decode('latin-1').upper()
        self.algorithm: str = name.removesuffix('-SESS')
        self.is_session: bool = name != self.algorithm
        offered = re.findall(rb'[^ \t,]+', parameters.get(b'qop', b'').lower())
        # Empty if the server offers none, as in RFC 2069, and None if it offers only unknown ones.
        # auth-int comes last: the body is read once more for it, and TLS protects it anyway.
        self.qop: bytes | None = next(
            (qop for qop in (b'auth', b'auth-int') if qop in offered), None if offered else b'')
        self.nonce: bytes = parameters.get(b'nonce', b'')
        self.cnonce: bytes = secrets.token_hex(16).encode()
        # How often the nonce has been used.
        self.count: int = 0
        # The hash of user name, realm and password, once it has been asked for.
        self.secret: bytes | None = None

    def __repr__(self) -> str:
        return f'<Challenge {self.algorithm} qop={self.qop!r} count={self.count}>'

    def rank(self, accepted: tuple[str, ...]) -> int:
        """The place of its algorithm among the accepted ones, or -1 if it cannot be answered."""
        is_whole = self.qop is not None and {b'realm', b'nonce'} <= self.parameters.keys()
        return accepted.index(self.algorithm) if is_whole and self.algorithm in accepted else -1

    @property
    def is_stale(self) -> bool:
        return self.parameters.get(b'stale', b'').lower() == b'true'

    def hash(self, *parts: bytes) -> bytes:
        return new_hash(self.algorithm, b':'.join(parts)).hexdigest().encode()

    async def hash_content(self, headers: Fields, body: Any, body_args: Any,
                           body_kwargs: Any) -> tuple[bytes, ...]:
        """The hash of the body for auth-int, for which the body is read (RFC 7616 3.4.3).

        It is an empty tuple for auth, which does not hash the body.
        """
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
                # Other tasks get a turn, since all chunks of a body may be there at once.
                await asyncio.sleep(0)
        finally:
            aclose = getattr(chunks, 'aclose', None)
            if aclose is not None:
                await aclose()
        return content_hash.hexdigest().encode(),

    def answer(self, name: bytes, password: bytes, method: bytes, target: bytes,
               content_hash: tuple[bytes, ...]) -> bytes:
        """The value of `authorization` (RFC 7616 3.4)."""
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
        # RFC 2069 has no cnonce. But without it no server can know the secret of a session.
        if qop or self.is_session:
            values.append((b'cnonce', quoted(self.cnonce)))
        for optional, form in ((b'algorithm', bytes), (b'opaque', quoted)):
            if optional in self.parameters:
                values.append((optional, form(self.parameters[optional])))
        if is_hashed:
            values.append((b'userhash', b'true'))
        return b'Digest ' + b', '.join(b'%b=%b' % value for value in values)

    def take_next_nonce(self, fields: Fields) -> None:
        """Use the nonce that a response gives in advance, if it does (RFC 7616 3.5).

        The secret of a session goes on to be that of its first nonce (3.4.2).
        """
        for name, value in fields:
            if name == b'authentication-info':
                for match in PARAMETER.finditer(value):
                    nonce = value_of(match)
                    if nonce and match[1].lower() == b'nextnonce':
                        self.nonce = nonce
                        self.count = 0


async def with_answer(challenge: Challenge, login: Login, method: bytes, target: bytes | None,
                      sent: dict[str, Any], body: Any, body_args: Any,
                      body_kwargs: Any) -> dict[str, Any]:
    """The URL, the params and the headers of a request that answers the challenge.

    `target` is the one that was given, if there is one, and `sent` has the same three of the
    request without an answer.
    """
    url, params, headers = sent['url'], sent['params'], sent['headers']
    try:
        if target is None:
            url, target = encoded(url, params)
            params = ()
        content_hash = await challenge.hash_content(headers, body, body_args, body_kwargs)
        answer = challenge.answer(login.name, login.password, method, target, content_hash)
    except Exception as cause:
        raise failure(HttpConnectionError, method, url,
                      f'refused: {str(cause) or type(cause).__name__}') from cause
    return {'url': url, 'params': params,
            'headers': (*headers, (b'authorization', answer))}


def best_challenge(headers: Fields, accepted: Iterable[str] = tuple(HASHES),
                   name: bytes = b'www-authenticate') -> Challenge | None:
    """The challenge with the most preferred algorithm, or None if none can be answered.

    `name` is that of the fields that have the challenges, such as `b'proxy-authenticate'`. This is
    public for other layers.
    """
    accepted = tuple(filter(is_available, accepted))
    challenges = [Challenge(parameters) for field, value in headers
                  if field == name for parameters in digest_parameters(value)]
    ranked = [(challenge.rank(accepted), challenge) for challenge in challenges]
    usable = [item for item in ranked if item[0] >= 0]
    return min(usable, key=lambda item: item[0])[1] if usable else None


def digest_parameters(value: bytes) -> list[dict[bytes, bytes]]:
    """The parameters of each digest challenge in a `www-authenticate` field."""
    challenges: list[tuple[bytes, dict[bytes, bytes]]] = []
    for match in PARAMETER.finditer(value):
        name, given = match[1].lower(), value_of(match)
        if given is not None and challenges:
            challenges[-1][1].setdefault(name, given)
        elif given is None and match[3] is None:
            challenges.append((name, {}))
        elif given is None and challenges:
            # A quoted string has no end, so the rest of this challenge is lost.
            challenges.pop()
    return [parameters for scheme, parameters in challenges if scheme == b'digest']


def value_of(match: re.Match[bytes]) -> bytes | None:
    """The value of a word, without its quotes.

    None if the word has no value, or its value is a quoted string without an end.
    """
    if match[2] is not None or not match[4]:
        return match[2]
    return re.sub(rb'\\(.)', rb'\1', match[3])


def new_hash(algorithm: str, data: bytes = b'') -> hashlib._Hash:
    return hashlib.new(HASHES[algorithm], data, usedforsecurity=False)


def quoted(value: bytes) -> bytes:
    return b'"' + re.sub(rb'(["\\])', rb'\\\1', value) + b'"'


# --------------------------------------------------------------------------------------- URLs

URL = re.compile(r'(https?)://([^/?#]*)([^#]*)', re.IGNORECASE)
BEGINNING = re.compile('[^/]*//[^/?#]*/')
AUTHORITY = re.compile(r'(\[[^\[\]@]+\]|[^:\[\]@]+)(?::([0-9]*))?')

# What may not stand in a target (RFC 3986 3.3, 3.4). Control characters are not encoded, so that
# lowhaio refuses them.
TO_ENCODE = re.compile(
    r"%(?![0-9A-Fa-f]{2})|[^A-Za-z0-9\-._~!$&'()*+,;=:@/?%\x00-\x1f\x7f-\x9f]")


def origin_of(url: str) -> str | None:
    """The origin of a URL, as 'scheme://host:port', or None if lowhaio would refuse the URL.

    ASCII hosts are only put into lower case, so two spellings of one IP address are two origins.
    """
    match = URL.match(url) if isinstance(url, str) else None
    parts = AUTHORITY.fullmatch(match[2]) if match is not None else None
    if match is None or parts is None:
        return None
    scheme = match[1].lower()
    host, digits = parts.groups()
    try:
        # Lower case alone would not do: it makes one name of some that have different owners.
        host = host.lower().removesuffix('.') if host.isascii() else canonical_host(host)
    except ValueError:
        return None
    port = (digits or '').lstrip('0') or {'http': '80', 'https': '443'}[scheme]
    return f'{scheme}://{host}:{port}'


def bound_to(origin: str | None) -> IsForUs:
    """A function that tells whether a request with this URL and target is for this origin.

    None stands for the origin of the first URL that the function is called with.
    """
    bound = None
    if origin is not None:
        bound = origin_of(origin)
        if bound is None or not re.fullmatch('[^/]*//[^/?#]*/?', origin):
            raise ValueError("origin must be a scheme and a host, like 'https://example.com'")
    # How a URL of that origin began, up to the slash that ends its authority. Most begin in the
    # same way, and need not be taken apart.
    beginning: str | None = None

    def is_for_us(url: str, target: Any) -> bool:
        nonlocal bound, beginning
        if beginning is not None and target is None and isinstance(url, str) and (
                url.startswith(beginning)):
            return True
        asked = origin_of(url)
        if target is not None and not is_at(target, asked):
            return False
        bound = bound or asked
        if asked is None or asked != bound:
            return False
        match = BEGINNING.match(url)
        beginning = None if match is None else match[0]
        return True

    return is_for_us


def is_at(target: Any, origin: str | None) -> bool:
    """Whether a request target stays at the origin of its URL.

    In absolute form it names an origin itself (RFC 9112 3.2.2), which a proxy may pass the request
    on to. What is no target is left to lowhaio, which refuses it.
    """
    return isinstance(target, bytes) and (
        target == b'*' or target.startswith(b'/') or origin_of(target.decode('latin-1')) == origin)


def encoded(url: str, params: Any) -> tuple[str, bytes]:
    """The URL with the params, and its request target.

    All that lowhaio would percent-encode is encoded here, so that the target that is hashed is the
    one that is sent.
    """
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
    """Whether the headers must be sent as they are.

    That is so if they have an `authorization`. It is also so if they are malformed: then lowhaio
    refuses them.
    """
    try:
        for name, _ in headers:
            if name.lower() == b'authorization':
                return True
    except (AttributeError, TypeError, ValueError):
        return True
    return False


def checked_algorithms(algorithms: Iterable[str]) -> tuple[str, ...]:
    """The algorithms that this Python has, of those that were given."""
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


def token_failure(kind: type[AnyError], method: bytes, url: str, cause: Exception) -> AnyError:
    # The message has only the class of the cause, because its text may hold a secret.
    return failure(kind, method, url, f'get_token failed: {type(cause).__name__}')


def failure(kind: type[AnyError], method: bytes, url: str, why: str) -> AnyError:
    name = method.decode('latin-1') if isinstance(method, bytes) else type(method).__name__
    return kind(f'{name} {origin_of(url)}, {why}')


def after_401(error: HttpError) -> HttpDataError:
    """An error which says that there was a 401 before.

    A layer that retries must know that the request has reached its server.
    """
    answered = HttpDataError(f'after a first answer, 401: {error}')
    answered.reused = error.reused
    answered.phase = error.phase
    answered.response_started = True
    return answered


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


async def drain(body: Any) -> list[bytes] | None:
    """Read the rest of a response body, so that its connection can be used again, and close it.

    Returns its chunks. If the body is too long, too slow or cut off, its connection is closed
    instead, and the result is None.
    """
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
