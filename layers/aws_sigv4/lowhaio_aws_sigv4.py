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
caller, who is asked for them at each request. Of these, a layer keeps the last secret with its
signing key, which is good for a day. They are never in the module.

A signature would take longer than the rest of a small request if each one began anew. So `Origins`
knows the origins that it has signed for, and only looks at a URL that is in the one form already.
A `Form` is what names of fields make of a request, and is remembered for the usual names. `Signer`
has the key, and the date, which it formats once a second.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Iterable, Mapping
from functools import lru_cache, partial
from hashlib import sha256
from itertools import compress
from tempfile import SpooledTemporaryFile
from time import gmtime, monotonic, strftime, time
from typing import IO, Any, Protocol, TypeVar, cast
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

__all__ = [
    'Signature', 'aws_sigv4_headers', 'object_url', 'presigned', 'signed', 'signed_for_regions']

LOGGER = logging.getLogger('lowhaio_aws_sigv4')

# How many bytes of a body are held in memory. A longer one is held in a temporary file.
MAX_IN_MEMORY = 1024 * 1024

# How many bytes of it are read, and sent, at once.
READ_SIZE = 64 * 1024

# How many bytes are hashed at once, and after how many seconds of this other tasks get a turn. To
# hash 1 MiB takes 0.7 to 3 ms, and a turn for each of them would cost a tenth of that.
MAX_HASHED = 1024 * 1024
MAX_HELD = 0.002

# How many origins, and how many sets of names of fields, are remembered.
MAX_ORIGINS = 64
MAX_FORMS = 256

# The services whose paths are encoded once, and not normalised: a key may be `a//../b`.
S3 = frozenset(('s3', 's3-object-lambda', 's3-outposts', 's3express'))

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
# What this layer adds and signs, in place of what the caller may have given.
ADDED = b'x-amz-date', b'x-amz-content-sha256'

# What `presigned` writes into a query, in lower case, and how many seconds a URL can be good for.
PRESIGNED = frozenset((
    'x-amz-algorithm', 'x-amz-credential', 'x-amz-date', 'x-amz-expires', 'x-amz-signature',
    'x-amz-signedheaders'))
MAX_EXPIRES = 7 * 24 * 60 * 60

# Methods whose content has a meaning, so that a request without content has to say so (RFC 9110
# 8.6). Otherwise S3 answers 411.
WITH_CONTENT = frozenset((b'PATCH', b'POST', b'PUT'))

# How many points P-256 has (NIST SP 800-186 3.2.1.3).
P256_ORDER = 0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551

EMPTY_HASH = sha256().hexdigest().encode()

NAME = re.compile(r'[A-Za-z0-9._-]+')
REGIONS = re.compile(r'[A-Za-z0-9*-]+(?:,[A-Za-z0-9*-]+)*')
BODY_HASH = re.compile(r'[0-9a-f]{64}|[A-Z0-9]+(?:-[A-Z0-9]+)+')
URL = re.compile(r'(https?)://(\[[^\[\]/?#@]*\]|[^:\[\]/?#@]+)(:[0-9]{0,5})?(?![^/?#])'
                 r'([^?#]*)\??([^#]*)', re.IGNORECASE)
TARGET = re.compile(rb'(?:https?://[^/?]*)?(/[^?]*)?(?:\?(.*))?', re.IGNORECASE | re.DOTALL)

# A path and a query that are in the one form that is sent: a "%" is followed by the digits of a
# byte that is not unreserved. In a path, it is not that of a slash either.
ESCAPED = '%(?:[0189A-F][0-9A-F]|2[0-9A-C]|3[A-F]|40|5[BCDE]|60|7[BCDF])'
SENT_PATH = f'/[A-Za-z0-9._~/-]*+(?:{ESCAPED}[A-Za-z0-9._~/-]*+)*+'
SENT_TEXT = f'[A-Za-z0-9._~-]*+(?:(?:{ESCAPED}|%2F)[A-Za-z0-9._~-]*+)*+'
SENT_PAIR = f'(?![&=]|$){SENT_TEXT}(?:={SENT_TEXT})?+'
SENT = re.compile(rf'({SENT_PATH})(?:\?({SENT_PAIR}(?:&{SENT_PAIR})*+))?')

CONTROL = re.compile(r'[\x00-\x1f\x7f-\x9f]')

Credentials = Callable[[], Awaitable[tuple[str, str, Headers]]]
# The URL and the params that are sent, and as they are signed: the host, the path and the query.
Place = tuple[str, Params, bytes, str, str]
Kwargs = Mapping[str, Any] | Iterable[tuple[str, Any]]
Names = tuple[bytes, ...]
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
    - `body_hash`: sent and signed in place of the body's SHA-256. It is a word such as
      `'UNSIGNED-PAYLOAD'`, or a SHA-256 that is known, as 64 hexadecimal digits. Without it, the
      body is read and held before anything is sent. One of `lowhaio.streamed(data)` is not read,
      because it is in memory already.
    - `origin`: such as `'https://my-bucket.s3.eu-west-2.amazonaws.com'`, or several of these. With
      `*.` in front of its host it means all hosts below that one. `'*'` is any origin, and None
      stands for the origin of the first request.

    The returned `request` takes two more keywords, which it does not pass on:

    - `body_hash`: for this request, in place of the one above.
    - `on_signed`: a function that is called with the `Signature` of this request, once it is
      signed. Nothing has been sent then, and `body` has not been called to be sent.

    Arguments that make no sense raise TypeError or ValueError at once. If a request cannot be
    signed, nothing of it is sent, and an `HttpConnectionError` is raised, whose cause says why.
    See https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
    """
    check_request(request)
    check_arguments(credentials, service, region)
    return signing(request, credentials, Origins(origin, service), Signer(service, region),
                   None if body_hash is None else checked_hash(body_hash))


def signed_for_regions(request: AnyRequest, credentials: Credentials, service: str,
                       regions: str = '*', *, body_hash: str | None = None,
                       origin: str | Iterable[str] | None = None) -> AnyRequest:
    """A `request` that signs for several regions at once, by Signature Version 4A.

    It is what Multi-Region Access Points of S3 ask for. It needs the package cryptography, without
    which it raises ImportError.

    - `regions`: `'*'`, or regions with commas in between, in which `*` can stand for a part.

    All else is as of `signed`, but the value of a `Signature` has up to 144 digits, and is another
    one each time.
    """
    check_request(request)
    check_arguments(credentials, service, '-')
    if not isinstance(regions, str) or not REGIONS.fullmatch(regions):
        raise ValueError("regions must be a str such as '*' or 'eu-west-1,us-east-*', got "
                         f'{regions!r}')
    return signing(request, credentials, Origins(origin, service),
                   RegionsSigner(service, regions),
                   None if body_hash is None else checked_hash(body_hash))


def check_request(request: object) -> None:
    if not callable(request):
        raise TypeError(f'request must be a coroutine function, got {type(request).__name__}')


def signing(request: AnyRequest, credentials: Credentials, origins: Origins, signer: Signer,
            hash_of_all: bytes | None) -> AnyRequest:
    async def signed_request(
            method: bytes, url: str, params: Params = (), headers: Headers = (),
            body: Body = empty_async_iterator, body_args: Iterable[Any] = (),
            body_kwargs: Kwargs = (), *, body_hash: str | None = None,
            on_signed: Callable[[Signature], object] | None = None, **kwargs: Any) -> Response:
        spool = None
        try:
            try:
                place = origins.place_of(url, params, kwargs.get('target'))
                fields = tuple(headers)
                framing = framing_of(names_of(fields))
                known_hash = hash_of_all if body_hash is None else checked_hash(body_hash)
                if body is empty_async_iterator:
                    length = 0 if method in WITH_CONTENT else None
                # Without framing, the body is read even if the request is not signed: nothing
                # else tells its length.
                elif known_hash is None and (place is not None or not framing):
                    check_framing(framing)
                    known_hash, length, spool = await hashed(body, body_args, body_kwargs)
                    if spool is not None:
                        body, body_args, body_kwargs = partial(chunks_of, spool), (), ()
                else:
                    length = len(body.data) if isinstance(body, streamed) else None
                if length is not None and not framing:
                    fields += ((b'content-length', b'%d' % length),)
                if place is not None:
                    url, params, *_ = place
                    fields, signature = signer.sign(
                        method, place, fields, known_hash or EMPTY_HASH, await credentials())
                    if on_signed is not None:
                        on_signed(signature)
            except Exception as cause:
                raise HttpConnectionError(
                    f'signing a request for {signer.service} in {signer.region} failed: '
                    f'{type(cause).__name__}: {cause}') from cause
            return await request(
                method, url, params=params, headers=fields, body=body, body_args=body_args,
                body_kwargs=body_kwargs, **kwargs)
        finally:
            if spool is not None:
                spool.close()

    return cast(AnyRequest, signed_request)


def check_arguments(credentials: Credentials, service: str, region: str) -> None:
    if not callable(credentials):
        raise TypeError(
            f'credentials must be a coroutine function, got {type(credentials).__name__}')
    for name, value in (('service', service), ('region', region)):
        if not isinstance(value, str) or not NAME.fullmatch(value):
            raise ValueError(f'{name} must be a str of letters, digits, "-", "_" and ".", got '
                             f'{value!r}')


def checked_hash(body_hash: str) -> bytes:
    if not isinstance(body_hash, str) or not BODY_HASH.fullmatch(body_hash):
        raise ValueError("body_hash must be a str such as 'UNSIGNED-PAYLOAD', or of 64 "
                         f'hexadecimal digits in lower case, got {body_hash!r}')
    return body_hash.encode()


async def presigned(url: str, credentials: Credentials, service: str, region: str, *,
                    method: bytes = b'GET', expires: int = 3600, params: Params = (),
                    headers: Headers = ()) -> str:
    """A URL that holds a signature, for one who has no credentials to make this very request.

    - `url`, `params`: as for a request. Those of S3 such as `response-content-disposition` belong
      here. What is returned is in the one form in which a signed request is sent.
    - `credentials`: as for `signed`. They are asked for once. Their fields, such as
      `x-amz-security-token`, become part of the URL.
    - `method`: of the request that is to be made, as bytes.
    - `expires`: for how many seconds from now on the URL is good, from 1 to 604800, which is 7
      days. It is good no longer than the credentials.
    - `headers`: pairs of bytes. Whoever uses the URL has to send these very fields. The host is
      signed, too. The content is not, with S3, unless `x-amz-content-sha256` is among them. With
      other services, a request without it must have no content.

    Raises TypeError and ValueError if there can be no such URL. Errors of `credentials` come
    through. It is sent to nobody: to keep it secret until it expires is up to the caller.
    See https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html
    """
    check_arguments(credentials, service, region)
    fields = tuple(headers)
    check_presigned(url, method, expires, fields)
    sent, path, query = split_url(url, params, service)
    taken = PRESIGNED.intersection(pair.partition('=')[0].lower() for pair in query.split('&'))
    if taken:
        raise ValueError(f'the query must not have what is added to it: {", ".join(taken)}')

    place = sent, (), host_field(*matched(url).group(1, 2, 3)), path, query
    added = Signer(service, region).presign(method, place, fields, expires, await credentials())
    return f'{sent}{"&" if query else "?"}{added}'


def check_presigned(url: str, method: bytes, expires: int, fields: Fields) -> None:
    check_fragment(url)
    if not isinstance(method, bytes):
        raise TypeError(f'method must be bytes, got {type(method).__name__}')
    if type(expires) is not int or not 1 <= expires <= MAX_EXPIRES:
        raise ValueError(f'expires must be an int, from 1 to {MAX_EXPIRES} seconds, which is 7 '
                         f'days, got {expires!r}')
    for name, value in fields:
        if not isinstance(name, bytes) or not isinstance(value, bytes):
            raise TypeError('headers must be pairs of bytes, got a pair of '
                            f'{type(name).__name__} and {type(value).__name__}')
        if name.lower() in NOT_SIGNED or name.lower() in (b'authorization', b'x-amz-date'):
            raise ValueError(f'headers must not have {name.decode("latin-1")}: it is not signed, '
                             'so that who uses the URL could send any')


def as_parameter(name: bytes) -> str:
    """The name of a field as that of a parameter, such as `X-Amz-Security-Token`."""
    return '-'.join(part.capitalize() for part in name.decode().split('-'))


class Signature:
    """The signature of a request, for those who sign more that belongs to it.

    That is what chunks of a body need which are signed one by one: the signature of the first one
    depends on that of the request, and that of each other one on the signature before it.
    """

    __slots__ = ('date', 'scope', 'value', 'sign')

    date: bytes
    """The value of `x-amz-date`, such as `b'20260101T000000Z'`."""
    scope: bytes
    """What the key is for, such as `b'20260101/eu-west-2/s3/aws4_request'`."""
    value: bytes
    """The signature itself, as 64 hexadecimal digits."""
    sign: Callable[[bytes], bytes]
    """Returns the signature of a string with the same key, as 64 hexadecimal digits."""

    def __init__(self, date: bytes, scope: bytes, value: bytes,
                 sign: Callable[[bytes], bytes]) -> None:
        self.date = date
        self.scope = scope
        self.value = value
        self.sign = sign

    def __repr__(self) -> str:
        return f'<Signature of {self.date.decode()} for {self.scope.decode()}>'


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
    path = canonical_path(quote(path) if service in S3 else path, service)
    place = '', (), host.encode(), path, encode_params(params, quote_via=quote)
    given = tuple(pre_auth_headers)
    fields, _ = Signer(service, region).sign(
        method.encode(), place, given, body_hash.encode(), (access_key_id, secret_access_key, ()))
    form = form_of(names_of(given), (), ADDED)
    return (*fields[-3:], *compress(given, form.kept))


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


# ----------------------------------------------------------------------- where credentials go

class Origins:
    """The origins whose requests are signed. None stands for that of the first request."""

    __slots__ = ('service', 'bound', 'hosts')

    def __init__(self, origin: str | Iterable[str] | None, service: str) -> None:
        self.service = service
        self.bound: re.Pattern[str] | None = None
        if origin is not None:
            patterns = map(pattern_of, (origin,) if isinstance(origin, str) else origin)
            self.bound = re.compile('|'.join(patterns))
        # The host field of each origin that has been signed for, as it was spelled in a URL.
        self.hosts: dict[str, bytes] = {}

    def place_of(self, url: str, params: Params, target: bytes | None) -> Place | None:
        """Where a request goes that is to be signed, and None for one to another origin.

        Most URLs begin as one before, and are in the form that is sent. The others are taken
        apart.
        """
        begin = url.find('/', 8)
        host = self.hosts.get(url[:begin])
        if host is not None and target is None and params == ():
            match = SENT.fullmatch(url, begin)
            if match is not None:
                path, query = match.groups('')
                return url, (), host, canonical_path(path, self.service), query
        return self.place_of_any(url, params, target)

    def place_of_any(self, url: str, params: Params, target: bytes | None) -> Place | None:
        scheme, host, port = matched(url).group(1, 2, 3)
        asked = origin_of(url)
        if target is not None and not is_at(target, asked):
            LOGGER.info('A request to %s is not signed: its target names another origin', asked)
            return None
        self.bound = self.bound or re.compile(re.escape(asked))
        if not self.bound.fullmatch(asked):
            LOGGER.info('A request to %s is not signed: it is not the origin of signed(…)', asked)
            return None
        field = host_field(scheme, host, port)
        if len(self.hosts) >= MAX_ORIGINS:
            self.hosts.clear()
        self.hosts[f'{scheme}://{host}{port or ""}'] = field
        check_fragment(url)
        if target is not None:
            path, query = split_target(target, self.service)
            return url, params, field, canonical_path(path, self.service), query
        sent, path, query = split_url(url, params, self.service)
        return sent, (), field, canonical_path(path, self.service), query


def check_fragment(url: str) -> None:
    if '#' in url:
        raise ValueError('url must not have a "#", since what follows it is not sent. In '
                         'a key it is "%23": object_url makes the URL of any key')


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
    return f'{scheme.lower()}://{host_field(scheme, host, port).decode()}'


# ----------------------------------------------------------------------------- what is sent
#
# To check a signature, a server decodes path and query and encodes them again, each server in its
# own way. So they are sent in the one form that all servers come back to: everything but letters,
# digits and "-._~" is percent-encoded.
#
# A target is sent as it is given, and signed in that form all the same. Only the path of a service
# other than S3 is signed as it is sent: it is not decoded there, but encoded once more.

def split_url(url: str, params: Params, service: str) -> tuple[str, str, str]:
    """The URL as it is sent, with the params, and its path and query."""
    scheme, host, port, path, query = matched(url).groups()
    # To S3, an encoded slash is a slash of the key. To other services it is no separator.
    path = recoded(path, '/') if service in S3 else '/'.join(map(recoded, path.split('/')))
    query = recoded_query(query.encode())
    more = encode_params(params, quote_via=quote)
    path, query = path or '/', '&'.join(filter(None, (query, more)))
    return f'{scheme}://{host}{port or ""}{path}{"?" if query else ""}{query}', path, query


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
    is_default = not digits or int(digits) == (443 if scheme.lower() == 'https' else 80)
    return (name if is_default else f'{name}:{int(digits)}').encode()


def check_framing(framing: Container[bytes]) -> None:
    if b'transfer-encoding' in framing:
        raise ValueError('headers must not have transfer-encoding when the body is signed: its '
                         'length is known, and sent')


async def hashed(body: Body, body_args: Iterable[Any], body_kwargs: Kwargs,
                 ) -> tuple[bytes, int, IO[bytes] | None]:
    """The SHA-256 and the length of a body, and what it is held in, if it had to be read."""
    if isinstance(body, streamed):
        return await hash_of(body.data), len(body.data), None
    spool = SpooledTemporaryFile(MAX_IN_MEMORY)  # noqa: SIM115 - the request closes it
    try:
        body_hash = await fill(spool, repeatable(body)(*body_args, **dict(body_kwargs)))
        return body_hash, spool.tell(), spool
    except BaseException:
        spool.close()
        raise


async def hash_of(data: bytes) -> bytes:
    digest = sha256()
    due = monotonic() + MAX_HELD
    with memoryview(data) as octets:
        for start in range(0, len(octets), MAX_HASHED):
            if start and monotonic() > due:
                await asyncio.sleep(0)
                due = monotonic() + MAX_HELD
            digest.update(octets[start:start + MAX_HASHED])
    return digest.hexdigest().encode()


async def fill(spool: IO[bytes], body: AsyncIterator[bytes]) -> bytes:
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
    return digest.hexdigest().encode()


async def chunks_of(spool: IO[bytes]) -> AsyncIterator[bytes]:
    spool.seek(0)
    while chunk := spool.read(READ_SIZE):
        yield chunk


# --------------------------------------------------------------------------- what is signed
#
# https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html

class Signer:
    """Signs for one service and region. It keeps the date, and the key of the last secret."""

    __slots__ = ('service', 'region', 'region_fields', 'region_values', 'added', 'second', 'date',
                 'asked', 'key')

    algorithm = b'AWS4-HMAC-SHA256'

    def __init__(self, service: str, region: str, region_fields: Fields = ()) -> None:
        self.service = service
        self.region = region
        self.region_fields = region_fields
        self.region_values = [value for _, value in region_fields]
        self.added = ADDED + names_of(region_fields)
        self.second = -1
        self.date = b''
        self.asked: tuple[str, str, bytes] | None = None
        self.key: Key

    def sign(self, method: bytes, place: Place, fields: Fields, body_hash: bytes,
             credentials: tuple[str, str, Headers]) -> tuple[Fields, Signature]:
        """The fields that are sent, and the signature that is among them."""
        _, _, host, path, query = place
        access_key_id, secret_access_key, more = credentials
        more = tuple(more)
        form = form_of(names_of(fields), names_of(more), self.added)
        fields = form.fields(fields, host, more)
        date = self.now()
        key = self.key_of(access_key_id, secret_access_key, date[:8])
        value = key.sign(string_to_sign(
            self.algorithm, date, key.scope, method, path, query,
            form.lines(fields, [date, body_hash, *self.region_values]), form.signed_names,
            body_hash))
        authorization = b'%b Credential=%b/%b, SignedHeaders=%b, Signature=%b' % (
            self.algorithm, access_key_id.encode(), key.scope, form.signed_names, value)
        return (*fields, (b'authorization', authorization), (b'x-amz-date', date),
                (b'x-amz-content-sha256', body_hash), *self.region_fields,
                ), Signature(date, key.scope, value, key.sign)

    def presign(self, method: bytes, place: Place, fields: Fields, expires: int,
                credentials: tuple[str, str, Headers]) -> str:
        """What is added to the query of a URL, the signature included."""
        _, _, host, path, query = place
        access_key_id, secret_access_key, more = credentials
        form = form_of(names_of(fields), (), ())
        date = self.now()
        key = self.key_of(access_key_id, secret_access_key, date[:8])
        added = '&'.join(f'{name}={quote(value, "")}' for name, value in (
            ('X-Amz-Algorithm', self.algorithm),
            ('X-Amz-Credential', b'%b/%b' % (access_key_id.encode(), key.scope)),
            ('X-Amz-Date', date), ('X-Amz-Expires', b'%d' % expires),
            ('X-Amz-SignedHeaders', form.signed_names),
            *((as_parameter(name), value) for name, value in more)))
        hashes = [value for name, value in fields if name.lower() == b'x-amz-content-sha256']
        hashes.append(b'UNSIGNED-PAYLOAD' if self.service in S3 else EMPTY_HASH)
        value = key.sign(string_to_sign(
            self.algorithm, date, key.scope, method, canonical_path(path, self.service),
            f'{query}&{added}' if query else added,
            form.lines(form.fields(fields, host, ()), []), form.signed_names, hashes[0]))
        return f'{added}&X-Amz-Signature={value.decode()}'

    def now(self) -> bytes:
        second = int(time())
        if second != self.second:
            self.second = second
            self.date = strftime('%Y%m%dT%H%M%SZ', gmtime(second)).encode()
        return self.date

    def key_of(self, access_key_id: str, secret_access_key: str, day: bytes) -> Key:
        asked = access_key_id, secret_access_key, day
        if asked != self.asked:
            self.key = self.new_key(access_key_id, secret_access_key, day)
            self.asked = asked
        return self.key

    def new_key(self, access_key_id: str, secret_access_key: str, day: bytes) -> Key:
        return SigningKey(secret_access_key, day, self.region, self.service)


class RegionsSigner(Signer):
    """Signs for one service in several regions, by the keys of Signature Version 4A."""

    __slots__ = ()

    algorithm = b'AWS4-ECDSA-P256-SHA256'

    def __init__(self, service: str, regions: str) -> None:
        from cryptography.hazmat.primitives.asymmetric import ec  # noqa: F401 - or it fails later
        super().__init__(service, regions, ((b'x-amz-region-set', regions.encode()),))

    def new_key(self, access_key_id: str, secret_access_key: str, day: bytes) -> Key:
        return RegionsKey(access_key_id, secret_access_key, day, self.service)


class Key(Protocol):
    scope: bytes

    def sign(self, text: bytes) -> bytes:
        """The signature of a text, as hexadecimal digits."""


class SigningKey:
    """The key of a secret for a day, a region and a service.

    HMAC hashes the padded key in front of the text, and again in front of that hash (RFC 2104).
    Both are hashed here, once. To go on with copies takes less than half of the time of `hmac`.
    """

    __slots__ = ('scope', 'inner', 'outer')

    def __init__(self, secret: str, day: bytes, region: str, service: str) -> None:
        self.scope = b'%b/%b/%b/aws4_request' % (day, region.encode(), service.encode())
        key = b'AWS4' + secret.encode()
        for part in self.scope.split(b'/'):
            key = hmac.digest(key, part, 'sha256')
        self.inner = sha256(bytes(byte ^ 0x36 for byte in key.ljust(64, b'\0')))
        self.outer = sha256(bytes(byte ^ 0x5c for byte in key.ljust(64, b'\0')))

    def sign(self, text: bytes) -> bytes:
        inner, outer = self.inner.copy(), self.outer.copy()
        inner.update(text)
        outer.update(inner.digest())
        return outer.hexdigest().encode()


class RegionsKey:
    """The key of a secret for a day and a service, and for all regions: one of P-256.

    Its number is made of the secret as NIST SP 800-108 has it, in counter mode with HMAC. A number
    that is no key, one of some four thousand million, is made anew with the next counter.
    """

    __slots__ = ('scope', 'private')

    def __init__(self, access_key_id: str, secret: str, day: bytes, service: str) -> None:
        from cryptography.hazmat.primitives.asymmetric import ec
        self.scope = b'%b/%b/aws4_request' % (day, service.encode())
        numbers = (int.from_bytes(hmac.digest(
            b'AWS4A' + secret.encode(),
            b'\0\0\0\1AWS4-ECDSA-P256-SHA256\0%b%c\0\0\1\0' % (access_key_id.encode(), counter),
            'sha256')) for counter in range(1, 255))
        number = next(number for number in numbers if number <= P256_ORDER - 2)
        self.private = ec.derive_private_key(number + 1, ec.SECP256R1())

    def sign(self, text: bytes) -> bytes:
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.hashes import SHA256
        return self.private.sign(text, ec.ECDSA(SHA256())).hex().encode()


class Form:
    """What the names of fields make of a request: what is sent, and how it is signed.

    - `given`: the names of the fields that the caller gave.
    - `more`: those of the credentials' fields, which replace any of the same names.
    - `added`: those in lower case which are signed too, and come with the signature.
    """

    __slots__ = ('kept', 'keeps_all', 'adds_host', 'template', 'order', 'signed_names')

    def __init__(self, given: Names, more: Names, added: Names) -> None:
        replaced = {b'authorization', *added, *map(bytes.lower, more)}
        self.kept = [name.lower() not in replaced for name in given]
        self.keeps_all = all(self.kept)
        names = [name.lower() for name in (*compress(given, self.kept), *more)]
        # lowhaio would add the host, but it must be the very one that is signed.
        self.adds_host = b'host' not in names
        names = [*([b'host'] if self.adds_host else ()), *names, *added]
        indexes = {name: [index for index, other in enumerate(names) if other == name]
                   for name in sorted({*names} - NOT_SIGNED)}
        self.signed_names = b';'.join(indexes)
        self.order = [index for of_one_name in indexes.values() for index in of_one_name]
        self.template = b''.join(
            name.replace(b'%', b'%%') + b':' + b','.join([b'%b'] * len(of_one_name)) + b'\n'
            for name, of_one_name in indexes.items())

    def fields(self, given: Fields, host: bytes, more: Fields) -> Fields:
        """The fields that are sent, but for those that come with the signature."""
        if not self.keeps_all:
            given = tuple(compress(given, self.kept))
        return ((b'host', host), *given, *more) if self.adds_host else given + more

    def lines(self, fields: Fields, added: list[bytes]) -> bytes:
        """The lines of these fields, and of the values that come with the signature."""
        values = [b' '.join(value.split()) for _, value in fields]
        values += added
        return self.template % tuple([values[index] for index in self.order])


form_of = lru_cache(MAX_FORMS)(Form)


@lru_cache(MAX_FORMS)
def framing_of(names: Names) -> frozenset[bytes]:
    """The names of framing fields among these, in lower case."""
    return FRAMING.intersection(name.lower() for name in names)


def names_of(fields: Fields) -> Names:
    return tuple([name for name, _ in fields])


def string_to_sign(algorithm: bytes, date: bytes, scope: bytes, method: bytes, path: str,
                   query: str, lines: bytes, signed_names: bytes, body_hash: bytes) -> bytes:
    canonical_request = b'%b\n%b\n%b\n%b\n%b\n%b' % (
        method, path.encode(), canonical_query(query).encode(), lines, signed_names, body_hash)
    return b'%b\n%b\n%b\n%b' % (
        algorithm, date, scope, sha256(canonical_request).hexdigest().encode())


def canonical_query(query: str) -> str:
    """The query as it is signed: each name with a value, sorted by name and then by value.

    A name ends where the "=" stands, which does not sort below all other characters. So there is
    one in its place that does.
    """
    if not query:
        return query
    pairs = [pair if '\0' in pair else pair + '\0'
             for pair in query.replace('=', '\0').split('&')]
    pairs.sort()
    return '&'.join(pairs).replace('\0', '=')


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
