"""AWS Signature Version 4 for lowhaio: requests are signed, together with their bodies.

::

    async def credentials():
        return 'my-access-key-id', 'my-secret-access-key', ()

    request, close = Pool()
    signed_request = signed(request, credentials, 's3', 'eu-west-2')
    url = object_url('https://my-bucket.s3.eu-west-2.amazonaws.com', 'my key')
    code, headers, body = await signed_request(b'GET', url)

This layer owns the form of a signed request: the one spelling of its path and query, its host, its
content-length, and the fields of the signature. A body that has to be hashed before it is sent is
held in memory or in a temporary file until the response comes. The credentials stay with the
caller, who is asked for them at each request.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from tempfile import SpooledTemporaryFile
from typing import IO, Any, TypeVar, cast
from urllib.parse import quote, unquote_to_bytes

from lowhaio import (
    Body,
    Fields,
    Headers,
    HttpConnectionError,
    Params,
    canonical_host,
    empty_async_iterator,
    encode_params,
    repeatable,
    streamed,
)

__all__ = ['aws_sigv4_headers', 'object_url', 'signed']

LOGGER = logging.getLogger('lowhaio_aws_sigv4')

# How many bytes of a body are held in memory. A longer one is held in a temporary file.
MAX_IN_MEMORY = 1024 * 1024

# How many bytes of it are read, and sent, at once.
READ_SIZE = 64 * 1024

# How many bytes are hashed before other tasks get a turn. That takes a millisecond or two.
MAX_HASHED = 1024 * 1024

# The services whose paths are encoded once, and not normalised: a key may be `a//../b`.
S3 = frozenset(('s3', 's3-object-lambda', 's3-outposts'))

# Fields that are not signed, since they may be changed or removed on the way to the server. These
# are the ones that botocore leaves out, and those that gateways and proxies write themselves.
NOT_SIGNED = frozenset((
    b'accept-encoding', b'baggage', b'connection', b'expect', b'forwarded', b'keep-alive',
    b'max-forwards', b'proxy-authenticate', b'proxy-authorization', b'proxy-connection',
    b'sec-websocket-extensions', b'sec-websocket-key', b'te',
    b'traceparent', b'tracestate', b'trailer', b'transfer-encoding', b'upgrade', b'user-agent',
    b'via', b'x-amzn-trace-id', b'x-forwarded-for', b'x-forwarded-host', b'x-forwarded-port',
    b'x-forwarded-proto', b'x-real-ip'))
FRAMING = frozenset((b'content-length', b'transfer-encoding'))
# What this layer adds, in place of what the caller may have given.
ADDED = frozenset((b'authorization', b'x-amz-date', b'x-amz-content-sha256'))

# Methods whose content has a meaning, so that a request without content has to say so (RFC 9110
# 8.6). Otherwise S3 answers 411.
WITH_CONTENT = frozenset((b'PATCH', b'POST', b'PUT'))

EMPTY_HASH = sha256().hexdigest()

NAME = re.compile(r'[A-Za-z0-9._-]+')
URL = re.compile(r'(https?)://(\[[^\[\]/?#@]*\]|[^:\[\]/?#@]+)(:[0-9]{0,5})?(?![^/?#])'
                 r'([^?#]*)\??([^#]*)', re.IGNORECASE)
TARGET = re.compile(rb'(?:https?://[^/?]*)?(/[^?]*)?(?:\?(.*))?', re.IGNORECASE | re.DOTALL)
CONTROL = re.compile(r'[\x00-\x1f\x7f-\x9f]')

# The three arguments of a request that make its content: body, body_args and body_kwargs.
Content = tuple[Body, Iterable[Any], Mapping[str, Any] | Iterable[tuple[str, Any]]]
Credentials = Callable[[], Awaitable[tuple[str, str, Headers]]]
IsForUs = Callable[[str, bytes | None], bool]
Response = tuple[bytes, Fields, Any]
# A layer returns a function of the type that it was given: same arguments, same response.
AnyRequest = TypeVar('AnyRequest', bound=Callable[..., Awaitable[Response]])


def signed(request: AnyRequest, credentials: Credentials, service: str, region: str,
           *, body_hash: str | None = None,
           origin: str | Iterable[str] | None = None) -> AnyRequest:
    """A `request` that signs what it sends to an origin. To others it sends what it is given.

    - `credentials`: a coroutine function, called for each request that is signed. It returns
      `(access_key_id, secret_access_key, ((name, value), …))`: two str, and pairs of bytes that
      are added to the headers, such as `x-amz-security-token`.
    - `service`, `region`: str, such as `'s3'` and `'eu-west-2'`.
    - `body_hash`: sent and signed in place of the body's SHA-256, such as `'UNSIGNED-PAYLOAD'`.
      Without it, the body is read and held before anything is sent. One of
      `lowhaio.streamed(data)` is not read, because it is in memory already.
    - `origin`: such as `'https://my-bucket.s3.eu-west-2.amazonaws.com'`, or several of these. With
      `*.` in front of its host it means all hosts below that one. `'*'` is any origin, and None
      stands for the origin of the first request.

    Arguments that make no sense raise TypeError or ValueError at once. If a request cannot be
    signed, nothing of it is sent, and an `HttpConnectionError` is raised, whose cause says why.
    See https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
    """
    for name, function in (('request', request), ('credentials', credentials)):
        if not callable(function):
            raise TypeError(f'{name} must be a coroutine function, got {type(function).__name__}')
    for name, value in (('service', service), ('region', region), ('body_hash', body_hash or '-')):
        if not isinstance(value, str) or not NAME.fullmatch(value):
            raise ValueError(f'{name} must be a str of letters, digits, "-", "_" and ".", got '
                             f'{value!r}')
    return signing(request, Signer(credentials, service, region, body_hash), bound_to(origin))


def signing(request: AnyRequest, signer: Signer, is_for_us: IsForUs) -> AnyRequest:
    async def signed_request(
            method: bytes, url: str, params: Params = (), headers: Headers = (),
            body: Body = empty_async_iterator, body_args: Iterable[Any] = (),
            body_kwargs: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
            **kwargs: Any) -> Response:
        with SpooledTemporaryFile(MAX_IN_MEMORY) as spool:
            try:
                target = kwargs.get('target')
                is_ours = is_for_us(url, target)
                fields = tuple(headers)
                framing = FRAMING & names_of(fields)
                body_hash, length, (body, body_args, body_kwargs) = await signer.prepare(
                    spool, method, is_ours, framing, (body, body_args, body_kwargs))
                if length is not None and not framing:
                    fields += ((b'content-length', b'%d' % length),)
                if is_ours:
                    url, params, fields = await signer.sign(
                        method, url, params, target, fields, body_hash)
            except Exception as cause:
                raise HttpConnectionError(
                    f'signing a request for {signer.service} in {signer.region} failed: '
                    f'{type(cause).__name__}: {cause}') from cause
            return await request(
                method, url, params=params, headers=fields, body=body, body_args=body_args,
                body_kwargs=body_kwargs, **kwargs)

    return cast(AnyRequest, signed_request)


class Signer:
    """The checked arguments of `signed`, and what they make of one request."""

    __slots__ = ('credentials', 'service', 'region', 'body_hash')

    def __init__(self, credentials: Credentials, service: str, region: str,
                 body_hash: str | None) -> None:
        self.credentials = credentials
        self.service = service
        self.region = region
        self.body_hash = body_hash

    async def prepare(self, spool: IO[bytes], method: bytes, is_ours: bool,
                      framing: Container[bytes], content: Content,
                      ) -> tuple[str, int | None, Content]:
        """The hash of a request's content, its length if that is known, and what is to be sent.

        `framing` has the names of the framing fields that the request has.
        """
        body = content[0]
        if body is empty_async_iterator:
            return self.body_hash or EMPTY_HASH, 0 if method in WITH_CONTENT else None, content
        # Without framing, the body is read even if the request is not signed: nothing else tells
        # its length.
        if self.body_hash is None and (is_ours or not framing):
            check_framing(framing)
            return await hashed(spool, content)
        length = len(body.data) if isinstance(body, streamed) else None
        return self.body_hash or EMPTY_HASH, length, content

    async def sign(self, method: bytes, url: str, params: Params, target: bytes | None,
                   fields: Fields, body_hash: str) -> tuple[str, Params, Fields]:
        """The URL, the params and the fields of the request.

        The URL has the params, and is in the one form that is sent. With a target, it is left as
        it is: then it tells only where the request goes.
        """
        if target is None:
            origin, host, path, query = split_url(url, params, self.service)
            url, params = f'{origin}{path}?{query}' if query else origin + path, ()
        else:
            _, host, *_ = split_url(url, (), self.service)
            path, query = split_target(target, self.service)
        access_key_id, secret_access_key, more = await self.credentials()
        more = tuple(more)
        fields = without(fields, ADDED | names_of(more)) + more
        # lowhaio would add the host, but it must be the very one that is signed.
        if b'host' not in names_of(fields):
            fields = ((b'host', host), *fields)
        fields += sign(access_key_id, secret_access_key, fields, self.service, self.region,
                       method.decode('ascii'), canonical_path(path, self.service), query,
                       body_hash)
        return url, params, fields


def aws_sigv4_headers(
        access_key_id: str, secret_access_key: str, pre_auth_headers: Headers, service: str,
        region: str, host: str, method: str, path: str, params: Params,
        body_hash: str) -> Fields:
    """The headers that sign a request made now, followed by `pre_auth_headers`.

    It is for those who send the request in another way.

    - `pre_auth_headers`: pairs of bytes. All but those that proxies change are signed.
    - `host`, `method`, `path`: str. The path is given as it is sent, but for S3 it is given
      decoded, and has to be sent as `urllib.parse.quote(path)`.
    - `params`: as for `urllib.parse.urlencode(params, doseq=True)`. A space has to be sent as
      `%20`.
    - `body_hash`: the SHA-256 of the body as hexadecimal digits, or `'UNSIGNED-PAYLOAD'`.
    """
    fields = without(pre_auth_headers, ADDED)
    with_host = fields if b'host' in names_of(fields) else ((b'host', host.encode()), *fields)
    return sign(access_key_id, secret_access_key, with_host, service, region, method,
                canonical_path(quote(path) if service in S3 else path, service),
                encode_params(params, quote_via=quote), body_hash) + fields


def object_url(bucket_url: str, key: str) -> str:
    """The URL of the object that has this very key, whatever characters are in it.

    - `bucket_url`: such as `'https://my-bucket.s3.eu-west-2.amazonaws.com'`, or the URL of a
      server with the bucket as its path. One slash at its end makes no difference.
    - `key`: the key as str. It is percent-encoded here.

    Raises ValueError if the `bucket_url` has a query or a fragment, or if the key is empty, since
    the URL would be that of the bucket.
    """
    matched(bucket_url)
    if '?' in bucket_url or '#' in bucket_url:
        raise ValueError('bucket_url must not have a query or a fragment')
    if not isinstance(key, str) or not key:
        raise ValueError('key must be a str that is not empty')
    return f'{bucket_url.removesuffix("/")}/{quote(key)}'


def names_of(fields: Headers) -> frozenset[bytes]:
    """The names of the fields, in lower case."""
    return frozenset(name.lower() for name, _ in fields)


def without(fields: Headers, names: Container[bytes]) -> Fields:
    return tuple((name, value) for name, value in fields if name.lower() not in names)


# ----------------------------------------------------------------------- where credentials go

def bound_to(origin: str | Iterable[str] | None) -> IsForUs:
    """A function that tells whether a request of this URL and target goes to one of these origins.

    None stands for the origin of the first URL that the function is called with.
    """
    bound = None
    if origin is not None:
        patterns = map(pattern_of, (origin,) if isinstance(origin, str) else origin)
        bound = re.compile('|'.join(patterns))

    def is_for_us(url: str, target: bytes | None) -> bool:
        nonlocal bound
        asked = origin_of(url)
        if target is not None and not is_at(target, asked):
            LOGGER.info('A request to %s is not signed: its target names another origin', asked)
            return False
        bound = bound or re.compile(re.escape(asked))
        if bound.fullmatch(asked):
            if '#' in url:
                raise ValueError('url must not have a "#", since what follows it is not sent. In '
                                 'a key it is "%23": object_url makes the URL of any key')
            return True
        LOGGER.info('A request to %s is not signed: it is not the origin of signed(…)', asked)
        return False

    return is_for_us


def is_at(target: bytes, origin: str) -> bool:
    """Whether a request target stays at the origin of its URL.

    In absolute form it names an origin itself (RFC 9112 3.2.2), which a proxy may pass the request
    on to.
    """
    if not isinstance(target, bytes):
        raise TypeError(f'target must be bytes, got {type(target).__name__}')
    if target.startswith(b'/') or target == b'*':
        return True
    try:
        return origin_of(target.decode('latin-1')) == origin
    except ValueError:
        return False


def pattern_of(origin: str) -> str:
    """A regular expression for an origin, in which the host may begin with `*.`."""
    if origin == '*':
        return '.*'
    host, path = matched(origin).group(2, 4)
    if '*' in host.removeprefix('*.') or path not in ('', '/') or '?' in origin or '#' in origin:
        raise ValueError("origin must be a scheme and a host, like 'https://example.com' or "
                         "'https://*.example.com'")
    return re.escape(origin_of(origin)).replace(r'://\*\.', r'://[^/:]+\.')


def origin_of(url: str) -> str:
    """The origin of a URL, without a port that is the default one."""
    scheme, host, port = matched(url).group(1, 2, 3)
    return f'{scheme.lower()}://{host_field(scheme.lower(), host, port).decode()}'


# ----------------------------------------------------------------------------- what is sent
#
# To check a signature, a server decodes path and query and encodes them again, each server in its
# own way. So they are sent in the one form that all servers come back to: everything but letters,
# digits and "-._~" is percent-encoded.
#
# A target is sent as it is given, and signed in that form all the same. Only the path of a service
# other than S3 is signed as it is sent: it is not decoded there, but encoded once more.

def split_url(url: str, params: Params, service: str) -> tuple[str, bytes, str, str]:
    """The origin, the `host` field, the path and the query."""
    scheme, host, port, path, query = matched(url).groups()
    # To S3, an encoded slash is a slash of the key. To other services it is no separator.
    path = recoded(path, '/') if service in S3 else '/'.join(map(recoded, path.split('/')))
    query = recoded_query(query.encode())
    more = encode_params(params, quote_via=quote)
    return (f'{scheme}://{host}{port or ""}', host_field(scheme.lower(), host, port), path or '/',
            f'{query}&{more}' if query and more else query or more)


def split_target(target: bytes, service: str) -> tuple[str, str]:
    """The path and the query of a request target, as a signature needs them."""
    match = TARGET.fullmatch(target)
    if match is None:
        raise ValueError('target must have a path, or be http:// or https:// and a host')
    path, query = match.groups(b'')
    return (recoded(path, '/') if service in S3 else path.decode(errors='surrogateescape'),
            recoded_query(query))


def recoded_query(query: bytes) -> str:
    # Nearly all servers read a plus sign in a query as a space.
    pairs = (pair.replace(b'+', b' ').split(b'=', 1) for pair in query.split(b'&') if pair)
    return '&'.join('='.join(map(recoded, pair)) for pair in pairs)


def matched(url: str) -> re.Match[str]:
    """The parts of a URL. Raises ValueError if it is none that can be signed."""
    match = None if CONTROL.search(url) else URL.match(url)
    if match is None:
        raise ValueError('url must start with http:// or https:// and a host, without userinfo, '
                         'and have no control characters')
    return match


def recoded(text: str | bytes, safe: str = '') -> str:
    """The text with all characters percent-encoded that are neither unreserved nor in `safe`."""
    return quote(unquote_to_bytes(text), safe)


def host_field(scheme: str, host: str, port: str | None) -> bytes:
    """The value of `host`: the name in lower case and ASCII, without the default port."""
    name = re.sub(r'%[^\]]*|\.$', '', host)
    # The host of a pattern begins with "*.", which is no part of a name.
    star = '*.' if name.startswith('*.') else ''
    name = name.lower() if name.isascii() else star + canonical_host(name.removeprefix(star))
    digits = (port or '').strip(':')
    is_default = not digits or int(digits) == (443 if scheme == 'https' else 80)
    return (name if is_default else f'{name}:{int(digits)}').encode()


def check_framing(framing: Container[bytes]) -> None:
    if b'transfer-encoding' in framing:
        raise ValueError('headers must not have transfer-encoding when the body is signed: its '
                         'length is known, and sent')


async def hashed(spool: IO[bytes], content: Content) -> tuple[str, int, Content]:
    """The SHA-256 and the length of a content, and the content to be sent in its place."""
    body, body_args, body_kwargs = content
    if isinstance(body, streamed):
        return await hash_of(body.data), len(body.data), content
    body_hash = await fill(spool, repeatable(body)(*body_args, **dict(body_kwargs)))
    return body_hash, spool.tell(), (partial(chunks_of, spool), (), ())


async def hash_of(data: bytes) -> str:
    digest = sha256()
    with memoryview(data) as octets:
        for start in range(0, len(octets), MAX_HASHED):
            if start:
                await asyncio.sleep(0)
            digest.update(octets[start:start + MAX_HASHED])
    return digest.hexdigest()


async def fill(spool: IO[bytes], body: AsyncIterator[bytes]) -> str:
    """Write all of a body to the spool, and return its SHA-256."""
    digest = sha256()
    chunks = aiter(body)
    try:
        async for chunk in chunks:
            digest.update(chunk)
            spool.write(chunk)
            # Other tasks get a turn, since all chunks of a body may be there at once.
            await asyncio.sleep(0)
    finally:
        aclose = getattr(chunks, 'aclose', None)
        if aclose is not None:
            await aclose()
    return digest.hexdigest()


async def chunks_of(spool: IO[bytes]) -> AsyncIterator[bytes]:
    spool.seek(0)
    while chunk := spool.read(READ_SIZE):
        yield chunk


# --------------------------------------------------------------------------- what is signed
#
# https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html

def sign(access_key_id: str, secret_access_key: str, fields: Fields, service: str, region: str,
         method: str, path: str, query: str, body_hash: str) -> Fields:
    """The fields that a request must have beside these. A `host` must be among these already."""
    date = datetime.now(UTC).strftime('%Y%m%dT%H%M%SZ')
    added = (b'x-amz-date', date.encode()), (b'x-amz-content-sha256', body_hash.encode())
    return (b'authorization', authorization(
        access_key_id, secret_access_key, fields + added, service, region, method, path, query,
        body_hash, date)), *added


def authorization(
        access_key_id: str, secret_access_key: str, fields: Fields, service: str, region: str,
        method: str, path: str, query: str, body_hash: str, date: str) -> bytes:
    """The value of `authorization`, for a canonical path and the date of `x-amz-date`."""
    signed_names = sorted(names_of(fields) - NOT_SIGNED)
    lines = [name + b':' + b','.join(b' '.join(value.split()) for other, value in fields
                                     if other.lower() == name) for name in signed_names]
    pairs = sorted(pair.partition('=')[::2] for pair in query.split('&') if pair)
    canonical_request = b'\n'.join((
        method.encode(), path.encode(), '&'.join(map('='.join, pairs)).encode(), *lines, b'',
        b';'.join(signed_names), body_hash.encode()))
    scope = '/'.join((date[:8], region, service, 'aws4_request'))
    to_sign = '\n'.join((
        'AWS4-HMAC-SHA256', date, scope, sha256(canonical_request).hexdigest()))
    key = b'AWS4' + secret_access_key.encode()
    for part in (*scope.split('/'), to_sign):
        key = hmac.digest(key, part.encode(), 'sha256')
    credential = '/'.join((access_key_id, scope))
    return b'AWS4-HMAC-SHA256 Credential=%b, SignedHeaders=%b, Signature=%b' % (
        credential.encode(), b';'.join(signed_names), key.hex().encode())


def canonical_path(path: str, service: str) -> str:
    """The path as it is signed.

    For S3 it is the path as it is sent. For other services, dot segments (RFC 3986 5.2.4) and
    empty segments are removed, and it is percent-encoded once more.
    """
    if service in S3:
        return path or '/'
    segments: list[str] = []
    for segment in path.split('/'):
        if segment == '..':
            del segments[-1:]
        elif segment not in ('', '.'):
            segments.append(segment)
    return quote('/' + '/'.join(segments) + ('/' if segments and path.endswith('/') else ''),
                 errors='surrogateescape')
