"""AWS Signature Version 4 for lowhaio: bodies are streamed, with a checksum behind them.

::

    async def credentials():
        return 'my-access-key-id', 'my-secret-access-key', ()

    request, close = Pool()
    signed_request = checked(signed(request, credentials, 's3', 'eu-west-2'))
    code, headers, body = await signed_request(
        b'PUT', object_url('https://my-bucket.s3.eu-west-2.amazonaws.com', 'my key'),
        headers=((b'content-length', b'3'),), body=three_bytes)

`signed` encodes the body of a PUT as `aws-chunked`: in chunks of 64 KiB, followed by a trailer
with the checksum of all of it, so that the server can refuse what was damaged on the way. If you
ask for it, each chunk is signed, too. `checked` does the same for downloads: it compares the
content of a response with the checksum that the server has sent. All but the bodies is signed by
lowhaio_aws_sigv4.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import zlib
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from functools import cache, partial
from hashlib import sha256
from importlib import import_module
from typing import Any, ParamSpec, cast

from lowhaio_aws_sigv4 import AnyRequest, Credentials, Signature, object_url
from lowhaio_aws_sigv4 import signed as signed_with

from lowhaio import (
    Body,
    ConnectionFacts,
    Fields,
    Headers,
    HttpConnectionError,
    HttpDataError,
    Params,
    Phase,
    Response,
    empty_async_iterator,
    repeatable,
    streamed,
)

__all__ = ['Check', 'CheckedBody', 'Checksum', 'ChecksumError', 'available_checksums',
           'check_of', 'checked', 'checksum', 'object_url', 'signed']

# How many bytes of the content are in a chunk, but for the last one. S3 takes 8 KiB or more.
# Larger chunks would save little: the checksum and the hash of the bytes cost more than the rest.
CHUNK_SIZE = 64 * 1024

# How many chunks of the caller are joined before other tasks get a turn. Sending gives them turns,
# but it takes 65,536 chunks of one byte until something is sent.
MAX_JOINED = 256

# The values of `x-amz-content-sha256`.
UNSIGNED = 'STREAMING-UNSIGNED-PAYLOAD-TRAILER'
SIGNED = 'STREAMING-AWS4-HMAC-SHA256-PAYLOAD'
SIGNED_WITH_TRAILER = 'STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER'

EMPTY_HASH = sha256().hexdigest().encode()
# The bytes that a signature adds to the line before a chunk, and to the trailer.
CHUNK_SIGNATURE = len(';chunk-signature=') + 64
TRAILER_SIGNATURE = len('x-amz-trailer-signature:\r\n') + 64

CHECKSUM_FIELD = b'x-amz-checksum-'
# Fields that begin so, and are no checksums.
ABOUT_CHECKSUMS = frozenset((b'x-amz-checksum-algorithm', b'x-amz-checksum-mode',
                             b'x-amz-checksum-type'))
# What asks for the checksum of a download.
MODE = (b'x-amz-checksum-mode', b'ENABLED')
# Fields that this layer adds, or that cannot be beside those.
OURS = frozenset((b'transfer-encoding', b'x-amz-decoded-content-length', b'x-amz-trailer'))
FRAMING = frozenset((b'content-length', b'transfer-encoding'))
DIGITS = re.compile(rb'[0-9]{1,20}')

Data = bytes | bytearray | memoryview
AnyResponse = tuple[bytes, Fields, Any]
OnSigned = Callable[[Signature], object]
P = ParamSpec('P')


# ------------------------------------------------------------------------------- checksums
#
# CRC32 and the SHAs are in the standard library. The two other CRCs are in awscrt, which is what
# AWS's own clients use. It is imported when a layer is made, and not in the midst of a response,
# since that takes tens of milliseconds.

class Crc:
    """A CRC with the interface of the hashes of the standard library."""

    __slots__ = ('_function', '_size', '_value')

    def __init__(self, function: Callable[[Data, int], int], size: int) -> None:
        self._function = function
        self._size = size
        self._value = 0

    def update(self, data: Data) -> None:
        self._value = self._function(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._size, 'big')


@cache
def makers() -> dict[str, Callable[[], Any]]:
    """What makes the hasher of each algorithm that can be computed here, the fastest first."""
    made: dict[str, Callable[[], Any]] = {}
    try:
        crt = import_module('awscrt.checksums')
    except ImportError:
        pass
    else:
        made['crc32c'] = partial(Crc, crt.crc32c, 4)
        # Early versions do not have it.
        if hasattr(crt, 'crc64nvme'):
            made['crc64nvme'] = partial(Crc, crt.crc64nvme, 8)
    made['crc32'] = partial(Crc, zlib.crc32, 4)
    # They tell of damage here, and protect from nobody.
    made['sha1'] = partial(hashlib.sha1, usedforsecurity=False)
    made['sha256'] = sha256
    return made


def available_checksums() -> tuple[str, ...]:
    """The names of the algorithms that can be computed here, from the fastest to the slowest.

    They are among `'crc32c'`, `'crc64nvme'`, `'crc32'`, `'sha1'` and `'sha256'`. The first two
    need the package awscrt.
    """
    return tuple(makers())


def checksum(name: str) -> Checksum:
    """A new checksum of that name, such as `'crc32'`.

    Raises ValueError if it is not one of `available_checksums()`.
    """
    return Checksum(name, maker_of(name)())


def maker_of(name: str) -> Callable[[], Any]:
    make = makers().get(name) if isinstance(name, str) else None
    if make is None:
        hint = (f': for {name}, install the package awscrt'
                if name in ('crc32c', 'crc64nvme') else '')
        raise ValueError(f'checksum must be one of {", ".join(makers())}, got {name!r}{hint}')
    return make


class Checksum:
    """A checksum, made of bytes that are given piece by piece.

    - `name`: the name of its algorithm.
    - `update(data)`: adds bytes, or what has a buffer of them.
    """

    __slots__ = ('name', 'update', '_hasher')

    def __init__(self, name: str, hasher: Any) -> None:
        self.name = name
        self._hasher = hasher
        self.update: Callable[[Data], object] = hasher.update

    def __repr__(self) -> str:
        return f'<Checksum {self.name} {self.base64().decode()}>'

    def digest(self) -> bytes:
        """The checksum of all that was given so far, big-endian if it is a CRC."""
        digest: bytes = self._hasher.digest()
        return digest

    def base64(self) -> bytes:
        """The same as it is in `x-amz-checksum-…`."""
        return b64encode(self.digest())


# --------------------------------------------------------------------------------- uploads

def signed(request: AnyRequest, credentials: Credentials, service: str, region: str,
           *, checksum: str | None = 'crc32', signed_payload: bool = False,
           origin: str | Iterable[str] | None = None) -> AnyRequest:
    """A `request` that signs what it sends, and sends the body of a PUT as `aws-chunked`.

    - `credentials`, `service`, `region`, `origin`: as of `lowhaio_aws_sigv4.signed`.
    - `checksum`: the name of the checksum that follows the body, one of `available_checksums()`.
      None stands for no checksum. Then `signed_payload` must be True.
    - `signed_payload`: whether each chunk is signed, and the trailer. AWS's clients do so where
      the scheme is http, and rely on TLS where it is https.

    The returned `request` takes both as keywords for one request, and the keyword `body_hash` of
    `lowhaio_aws_sigv4`: with that one it sends the body as it is.

    The length of a body is told by a `content-length`, or it is one of `lowhaio.streamed(data)`. A
    body that yields more or less is an error, as in lowhaio. Requests of other methods are signed
    as by `lowhaio_aws_sigv4`, and so are those without a body. Arguments that make no sense raise
    TypeError or ValueError. If a request cannot be signed, nothing of it is sent, and an
    `HttpConnectionError` is raised, whose cause says why. See
    https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming-trailers.html
    """
    inner: Callable[..., Awaitable[AnyResponse]] = signed_with(
        taking_back(request), credentials, service, region, origin=origin)
    coding_of(checksum, signed_payload)

    async def signed_request(
            method: bytes, url: str, params: Params = (), headers: Headers = (),
            body: Body = empty_async_iterator, body_args: Iterable[Any] = (),
            body_kwargs: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
            *, checksum: str | None = checksum,
            signed_payload: bool = signed_payload, body_hash: str | None = None,
            on_signed: OnSigned | None = None, **kwargs: Any) -> AnyResponse:
        if method == b'PUT' and body is not empty_async_iterator and body_hash is None:
            headers = with_length(headers, body)
            make = partial(upload_of, headers, checksum, signed_payload, on_signed)
            try:
                upload = make()
            except Exception:
                # To another origin, the request may be sent as it is. To ours it may not, and this
                # raises once more.
                body_hash, on_signed = UNSIGNED, lambda _: make()
            else:
                body_hash, on_signed = upload.coding.body_hash, upload.on_signed
                kwargs['aws_chunked'] = upload, headers, body
                headers = encoded_headers(headers, upload.coding, upload.length)
                body = repeatable(body, upload.encoded)
        return await inner(
            method, url, params=params, headers=headers, body=body, body_args=body_args,
            body_kwargs=body_kwargs, body_hash=body_hash, on_signed=on_signed, **kwargs)

    return cast(AnyRequest, signed_request)


def taking_back(request: AnyRequest) -> AnyRequest:
    """The `request` around which lowhaio_aws_sigv4 goes.

    Only there it is known whether a request has been signed. If it has not, since it goes to
    another origin, its body is sent as it was given.
    """
    if not callable(request):
        raise TypeError(f'request must be a coroutine function, got {type(request).__name__}')

    async def taking_back_request(
            method: bytes, url: str, *, aws_chunked: tuple[Upload, Fields, Body] | None = None,
            **kwargs: Any) -> AnyResponse:
        if aws_chunked is not None:
            upload, headers, body = aws_chunked
            if upload.signature is None:
                kwargs.update(headers=headers, body=body)
        return await request(method, url, **kwargs)

    return cast(AnyRequest, taking_back_request)


class Coding:
    """How a content is encoded: with which checksum, if any, and whether its chunks are signed."""

    __slots__ = ('name', 'is_signed', 'body_hash', 'trailer', 'whole_length', 'end_length')

    def __init__(self, name: str | None, is_signed: bool) -> None:
        self.name = name
        self.is_signed = is_signed
        # What `x-amz-content-sha256` says.
        self.body_hash = UNSIGNED
        if is_signed:
            self.body_hash = SIGNED if name is None else SIGNED_WITH_TRAILER
        # The name of the field in the trailer that has the checksum.
        self.trailer = b'' if name is None else CHECKSUM_FIELD + name.encode()
        # How many bytes a chunk that is not the last one has once it is encoded, and the end. The
        # last chunk has no data, and its second line end comes after the trailer.
        self.whole_length = self.chunk_length(CHUNK_SIZE)
        self.end_length = self.chunk_length(0) + self.trailer_length()

    def __repr__(self) -> str:
        return f'<Coding {self.body_hash} {self.name}>'

    def encoded_length(self, length: int) -> int:
        """How many bytes a content of so many bytes has once it is encoded."""
        whole, rest = divmod(length, CHUNK_SIZE)
        return (whole * self.whole_length + (self.chunk_length(rest) if rest else 0)
                + self.end_length)

    def chunk_length(self, length: int) -> int:
        signature = CHUNK_SIGNATURE if self.is_signed else 0
        return len(f'{length:x}\r\n\r\n') + signature + length

    def trailer_length(self) -> int:
        if self.name is None:
            return 0
        line = len(self.trailer) + len(checksum(self.name).base64()) + len(':\r\n')
        return line + (TRAILER_SIGNATURE if self.is_signed else 0)


# There are but a few of them.
coding_for = cache(Coding)


def coding_of(name: str | None, signed_payload: bool) -> Coding:
    """The coding that the arguments of `signed` ask for. Raises ValueError if there is none."""
    if not isinstance(signed_payload, bool):
        raise TypeError(f'signed_payload must be True or False, got {signed_payload!r}')
    if name is not None:
        maker_of(name)
    elif not signed_payload:
        raise ValueError('checksum must not be None when signed_payload is False: an aws-chunked '
                         'body has a checksum, or signatures. lowhaio_aws_sigv4_unsigned_payload '
                         'sends bodies with neither')
    return coding_for(name, signed_payload)


class Upload:
    """How the content of one request is encoded, and signed.

    It knows neither the headers nor the body, which refers to it.
    """

    __slots__ = ('coding', 'length', 'tell', 'signature')

    def __init__(self, coding: Coding, length: int, tell: OnSigned | None) -> None:
        self.coding = coding
        self.length = length
        # The `on_signed` of the caller.
        self.tell = tell
        # None until the request is signed.
        self.signature: Signature | None = None

    def __repr__(self) -> str:
        state = 'not signed' if self.signature is None else 'signed'
        return f'<Upload of {self.length} bytes {state} {self.coding!r}>'

    def on_signed(self, signature: Signature) -> None:
        self.signature = signature
        if self.tell is not None:
            self.tell(signature)

    def encoded(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """What is sent of the chunks that one call of the body yields."""
        return EncodedBody(chunks, self.length, Encoder(self.coding, self.signature))


def upload_of(headers: Fields, name: str | None, signed_payload: bool,
              tell: OnSigned | None) -> Upload:
    """Raises ValueError if the content cannot be encoded."""
    lengths = []
    for field, value in headers:
        field = field.lower()
        if field == b'content-length':
            lengths.append(value)
        elif field in OURS or (field.startswith(CHECKSUM_FIELD) and field not in ABOUT_CHECKSUMS):
            raise ValueError(f'headers must not have {field.decode()} when the body is sent as '
                             'aws-chunked: this layer adds what tells of the encoded body, and '
                             'the checksum')
    if len(lengths) != 1 or not DIGITS.fullmatch(lengths[0]):
        raise ValueError('headers must have one content-length, with the length of the body '
                         f'before it is encoded, got {lengths}. If it is not known, a multipart '
                         'upload can send the body in parts')
    return Upload(coding_of(name, signed_payload), int(lengths[0]), tell)


def with_length(headers: Headers, body: Body) -> Fields:
    """The headers, with the length of a body that tells its length."""
    fields, names = as_fields(headers)
    if not isinstance(body, streamed) or names & FRAMING:
        return fields
    return (*fields, (b'content-length', b'%d' % len(body.data)))


def encoded_headers(headers: Fields, coding: Coding, length: int) -> Fields:
    """The headers of the encoded body. The order of those that are given stays."""
    sent, is_named = [], False
    for field, value in headers:
        match field.lower():
            case b'content-length':
                value = b'%d' % coding.encoded_length(length)
            case b'content-encoding' if not is_named:
                value, is_named = b'aws-chunked,' + value, True
        sent.append((field, value))
    if not is_named:
        sent.append((b'content-encoding', b'aws-chunked'))
    sent.append((b'x-amz-decoded-content-length', b'%d' % length))
    if coding.name is not None:
        sent.append((b'x-amz-trailer', coding.trailer))
    return tuple(sent)


def as_fields(headers: Headers) -> tuple[Fields, set[bytes]]:
    """The headers, and their names in lower case."""
    try:
        fields = tuple(headers)
        return fields, {name.lower() for name, _ in fields}
    except Exception as cause:
        error = HttpConnectionError('headers must be pairs of name and value, both bytes')
        error.phase = Phase.REFUSED
        raise error from cause


# ------------------------------------------------------------------------- the aws-chunked body
#
# `EncodedBody` cuts the content into chunks of one size, however the caller has cut it, and counts
# its bytes. `Encoder` is pure: it turns chunks into the bytes that are sent. With signatures, each
# one is made of the one before, and the first of the signature of the head:
#
#     10000;chunk-signature=…        the length in hexadecimal digits
#     65,536 bytes
#     0;chunk-signature=…            the last chunk
#     x-amz-checksum-crc32:…         the trailer: one field
#     x-amz-trailer-signature:…
#                                    an empty line

class Encoder:
    """Encodes one content. `signature` is that of the head, and is not used without signatures."""

    __slots__ = ('checksum', 'trailer', 'signature', 'previous')

    def __init__(self, coding: Coding, signature: Signature | None) -> None:
        self.checksum = None if coding.name is None else checksum(coding.name)
        self.trailer = coding.trailer
        self.signature = signature if coding.is_signed else None
        self.previous = b'' if signature is None else signature.value

    def __repr__(self) -> str:
        return f'<Encoder {"un" if self.signature is None else ""}signed {self.checksum!r}>'

    def chunk(self, data: Data) -> bytes:
        """A chunk, which must not be empty. All but the last have CHUNK_SIZE bytes."""
        if self.checksum is not None:
            self.checksum.update(data)
        line = b'%x%b\r\n' % (len(data), self.extension(data))
        return b''.join((line, data, b'\r\n'))

    def end(self) -> bytes:
        """What follows the chunks."""
        return b'0%b\r\n%b\r\n' % (self.extension(b''), self.trailer_lines())

    def extension(self, data: Data) -> bytes:
        if self.signature is None:
            return b''
        return b';chunk-signature=' + self.sign(
            self.signature, b'AWS4-HMAC-SHA256-PAYLOAD', EMPTY_HASH,
            sha256(data).hexdigest().encode())

    def trailer_lines(self) -> bytes:
        if self.checksum is None:
            return b''
        field = self.trailer + b':' + self.checksum.base64()
        if self.signature is None:
            return field + b'\r\n'
        # It is signed with another line end than it is sent with.
        digest = sha256(field + b'\n').hexdigest().encode()
        return b'%b\r\nx-amz-trailer-signature:%b\r\n' % (
            field, self.sign(self.signature, b'AWS4-HMAC-SHA256-TRAILER', digest))

    def sign(self, signature: Signature, kind: bytes, *hashes: bytes) -> bytes:
        self.previous = signature.sign(b'\n'.join((
            kind, signature.date, signature.scope, self.previous, *hashes)))
        return self.previous


class EncodedBody:
    """The encoded content of a request, as an async iterator of bytes.

    It holds one chunk, and the bytes that the caller's body has yielded last.
    """

    __slots__ = ('_chunks', '_encoder', '_length', '_left', '_rest', '_has_ended', '__weakref__')

    def __init__(self, chunks: AsyncIterator[bytes], length: int, encoder: Encoder) -> None:
        self._chunks = chunks
        # None once all has been sent, or something has failed.
        self._encoder: Encoder | None = encoder
        self._length = length
        # How many more bytes the caller's body has to yield, and whether it has ended.
        self._left = length
        self._has_ended = False
        # What is left of the bytes that it has yielded last.
        self._rest = memoryview(b'')

    def __repr__(self) -> str:
        encoder = self._encoder
        state = 'has ended' if encoder is None else f'{self._left} bytes left {encoder!r}'
        return f'<EncodedBody {state} of {self._chunks!r}>'

    def __aiter__(self) -> EncodedBody:
        return self

    async def __anext__(self) -> bytes:
        # The encoder is put back only after a chunk. If the next lines raise, the last chunk is
        # never sent, since a body that was cut short would look whole then.
        encoder, self._encoder = self._encoder, None
        if encoder is None:
            raise StopAsyncIteration
        if data := await self._take():
            self._encoder = encoder
            return encoder.chunk(data)
        if self._left:
            raise ValueError(f'the body ended {self._left} bytes short of its content-length of '
                             f'{self._length}')
        return encoder.end()

    async def _take(self) -> Data:
        """The next CHUNK_SIZE bytes of the content, and fewer at its end."""
        rest = self._rest
        if len(rest) >= CHUNK_SIZE or self._has_ended:
            self._rest = rest[CHUNK_SIZE:]
            return rest[:CHUNK_SIZE]
        joined, missing, turn = bytearray(rest), CHUNK_SIZE - len(rest), 0
        async for data in self._chunks:
            if not isinstance(data, bytes):
                data = to_bytes(data)
            self._count(data)
            if len(data) >= missing:
                self._rest = memoryview(data)[missing:]
                begin = memoryview(data)[:missing]
                # Large chunks of the caller are not copied once more.
                return joined + begin if joined else begin
            joined += data
            missing -= len(data)
            turn += 1
            if turn % MAX_JOINED == 0:
                await asyncio.sleep(0)
        self._has_ended = True
        self._rest = memoryview(b'')
        return joined

    def _count(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(f'the body yielded more than its content-length of {self._length}')

    async def aclose(self) -> None:
        self._encoder = None
        aclose = getattr(self._chunks, 'aclose', None)
        if aclose is not None:
            await aclose()


def to_bytes(chunk: Any) -> bytes:
    try:
        return bytes(memoryview(chunk))
    except TypeError:
        raise TypeError(f'the body must yield bytes, got {type(chunk).__name__}') from None


# ------------------------------------------------------------------------------- downloads

def checked(request: Callable[P, Awaitable[AnyResponse]],
            ) -> Callable[P, Coroutine[Any, Any, Response]]:
    """A `request` that asks for the checksums of what it downloads, and checks them.

    It goes around `signed`, because the field that asks has to be signed.

    At the end of a content with another checksum than the server has sent, reading it raises a
    `ChecksumError`. Which responses are checked, `check_of` tells. The others are returned as they
    are. A request that is no function raises TypeError.
    """
    if not callable(request):
        raise TypeError(f'request must be a coroutine function, got {type(request).__name__}')
    inner: Callable[..., Awaitable[AnyResponse]] = request
    # What is needed is imported now.
    makers()

    async def checked_request(
            method: bytes, url: str, params: Params = (), headers: Headers = (),
            **kwargs: Any) -> AnyResponse:
        if method == b'GET':
            headers, names = as_fields(headers)
            if MODE[0] not in names:
                headers += (MODE,)
        code, fields, body = await inner(method, url, params=params, headers=headers, **kwargs)
        check = check_of(method, code, fields)
        return code, fields, body if check is None else CheckedBody(body, check)

    return cast(Callable[P, Coroutine[Any, Any, Response]], checked_request)


def check_of(method: bytes, code: bytes, headers: Fields) -> Check | None:
    """What checks the content of a response, or None if that cannot be checked.

    It can be if this is the 200 to a GET of a whole object, its `content-length` is told, and one
    of the fields `x-amz-checksum-…` has a checksum of the whole content, by one of
    `available_checksums()`. With several, the fastest is taken. Those of objects that were
    uploaded in parts may be checksums of checksums, which are not those of the content.

    Without a `content-length`, the content may have been compressed on the way, or decompressed
    by another layer.
    """
    if method != b'GET' or code != b'200':
        return None
    sums = {name[len(CHECKSUM_FIELD):]: value
            for name, value in headers if name.startswith(CHECKSUM_FIELD)}
    # Most responses have none, and are done with here.
    if not sums or sums.get(b'type', b'').upper() == b'COMPOSITE':
        return None
    names = {name for name, _ in headers}
    if b'content-length' not in names or b'content-range' in names:
        return None
    for algorithm in makers():
        expected = sums.get(algorithm.encode())
        if expected is not None:
            made = checksum(algorithm)
            # A checksum of checksums has the number of parts at its end.
            if len(expected) == len(made.base64()):
                return Check(made, expected)
    return None


class Check:
    """The checksum that a content must have.

    - `algorithm`: its name.
    - `expected`: what the server has sent, as bytes in base64.
    - `update(data)`: adds bytes of the content, in their order. They may come from several
      responses, if a download was interrupted.
    """

    __slots__ = ('algorithm', 'expected', 'update', '_checksum')

    def __init__(self, made: Checksum, expected: bytes) -> None:
        self.algorithm: str = made.name
        self.expected = expected
        self._checksum = made
        self.update: Callable[[Data], object] = made.update

    def __repr__(self) -> str:
        return f'<Check {self._checksum!r} expected={self.expected.decode("latin-1")}>'

    def finish(self) -> None:
        """Raise a `ChecksumError` unless the bytes so far have that checksum."""
        actual = self._checksum.base64()
        if actual != self.expected:
            raise ChecksumError(self.algorithm, self.expected, actual)


class ChecksumError(HttpDataError):
    """The content of a response does not have the checksum that the server has sent.

    - `algorithm`: such as `'crc32'`.
    - `expected`, `actual`: the checksum that was sent and that of what came, bytes in base64.
    """

    response_started = True
    phase = Phase.CONTENT

    def __init__(self, algorithm: str, expected: bytes, actual: bytes) -> None:
        # Exceptions are copied and pickled by their arguments.
        super().__init__(algorithm, expected, actual)
        self.algorithm = algorithm
        self.expected = expected
        self.actual = actual

    def __str__(self) -> str:
        return (f'checking the response body failed: its {self.algorithm} should be '
                f'{self.expected!r}, as the server has sent, but is {self.actual!r}')


class CheckedBody:
    """The content of a response, as an async iterator of bytes that checks it at its end.

    It passes on all other attributes of the body that it reads from.
    """

    __slots__ = ('_body', '_check', '__weakref__')

    def __init__(self, body: Any, check: Check) -> None:
        self._body = body
        self._check = check

    def __repr__(self) -> str:
        return f'<CheckedBody {self._check!r} of {self._body!r}>'

    @property
    def trailers(self) -> Fields:
        trailers: Fields = self._body.trailers
        return trailers

    @property
    def request_sent(self) -> bool:
        request_sent: bool = self._body.request_sent
        return request_sent

    @property
    def http_version(self) -> bytes:
        http_version: bytes = self._body.http_version
        return http_version

    @property
    def reason(self) -> bytes:
        reason: bytes = self._body.reason
        return reason

    @property
    def connection(self) -> ConnectionFacts:
        connection: ConnectionFacts = self._body.connection
        return connection

    def send(self, data: bytes) -> Coroutine[Any, Any, None]:
        sending: Coroutine[Any, Any, None] = self._body.send(data)
        return sending

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)

    def __aiter__(self) -> CheckedBody:
        return self

    async def __anext__(self) -> bytes:
        async for chunk in self._body:
            self._check.update(chunk)
            return bytes(chunk)
        self._check.finish()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        await self._body.aclose()
