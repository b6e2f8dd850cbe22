"""Content codings for lowhaio: gzip and deflate, br and zstd where they are installed.

::

    request, close = Pool()
    code, headers, body = await decompressed(request)(b'GET', 'https://example.com/')

    body = compressed(streamed(b'The content'), b'gzip')
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from functools import partial
from importlib import import_module
from typing import Any, ParamSpec, cast

from lowhaio import (
    Fields,
    HttpConnectionError,
    HttpDataError,
    HttpError,
    Response,
    empty_async_iterator,
    repeatable,
)


def optional(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        return None


brotli = optional('brotli')
zstd = optional('compression.zstd') or optional('backports.zstd')

# Each of them may multiply the work of the next one.
MAX_CODINGS = 5

# Bytes that are decoded in one step, and the most that are handed to a decompressor for that:
# it copies what it does not use.
MAX_CHUNK = 64 * 1024
MAX_PIECE = 16 * 1024

# RFC 9659 3: decoders of the content coding need not have more than 8 MiB of window.
ZSTD_WINDOW_LOG = 23

# Codes of responses without content, or with a part of it, which can not be decoded alone.
NOT_DECODED = frozenset((b'204', b'206', b'304'))

# They are about the coded content.
REMOVED = frozenset((b'content-encoding', b'content-length', b'content-digest', b'content-md5',
                     b'digest', b'repr-digest'))

AnyResponse = tuple[bytes, Fields, Any]
# A layer takes the same arguments as what it wraps. Its body may be another one.
P = ParamSpec('P')


# --------------------------------------------------------------------------------- codings
#
# By name, as in `content-encoding`: what makes a decompressor, given the first byte; whether the
# content may be several of its streams, one after the other; and what makes a compressor.

class BrotliDecompressor:
    """Brotli's, with the interface of those of the standard library."""

    # Its own limit is passed by up to 64 KiB, unless the first 32 KiB reach it.
    limit = 16 * 1024
    unused_data = b''

    def __init__(self) -> None:
        self.inner = brotli.Decompressor()
        self.needs_input = True

    def decompress(self, data: bytes, max_length: int) -> bytes:
        chunk: bytes = self.inner.process(data, output_buffer_limit=self.limit)
        self.needs_input = self.inner.can_accept_more_data() and len(chunk) < self.limit
        return chunk

    @property
    def eof(self) -> bool:
        return bool(self.inner.is_finished())


class BrotliCompressor:
    def __init__(self) -> None:
        # The default, 11, is for what is compressed once and sent often.
        inner = brotli.Compressor(quality=5)
        self.compress = inner.process
        self.flush = inner.finish


def zlib_decompressor(first: int) -> Any:
    """RFC 9110 8.4.1.2: some senders leave out the zlib header, and its compression method 8."""
    return zlib.decompressobj(zlib.MAX_WBITS if first & 15 == 8 else -zlib.MAX_WBITS)


CODINGS: dict[bytes, tuple[Callable[[int], Any], bool, Callable[[], Any]]] = {
    b'gzip': (lambda _: zlib.decompressobj(16 + zlib.MAX_WBITS), True,
              lambda: zlib.compressobj(wbits=16 + zlib.MAX_WBITS)),
    b'deflate': (zlib_decompressor, False, zlib.compressobj),
}
# Before 1.2, nothing bounds what brotli makes of a few bytes.
if hasattr(getattr(brotli, 'Decompressor', None), 'can_accept_more_data'):
    CODINGS[b'br'] = (lambda _: BrotliDecompressor(), False, BrotliCompressor)
if zstd is not None:
    CODINGS[b'zstd'] = (
        lambda _: zstd.ZstdDecompressor(
            options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG}),
        True, lambda: zstd.ZstdCompressor())
ACCEPTED = b', '.join(CODINGS)


# ------------------------------------------------------------------------------- responses


def decompressed(request: Callable[P, Awaitable[AnyResponse]], *, max_length: int | None = None,
                 ) -> Callable[P, Coroutine[Any, Any, Response]]:
    """A `request` that asks for compressed content, and returns it decompressed.

    A body that decompresses to more than `max_length` bytes, that is cut short, or that has more
    after its end, raises an `HttpDataError`, and its connection is closed. None: no limit.
    """
    if not callable(request):
        raise TypeError(f'request must be a coroutine function, got {type(request).__name__}')
    if max_length is not None and (not isinstance(max_length, int) or max_length < 0):
        raise ValueError(f'max_length must be a number of bytes or None, got {max_length!r}')
    inner: Callable[..., Awaitable[AnyResponse]] = request

    async def decompressed_request(
            method: bytes, url: str, params: Any = (),
            headers: Iterable[tuple[bytes, bytes]] = (), body: Any = empty_async_iterator,
            body_args: Any = (), body_kwargs: Any = (), **kwargs: Any) -> AnyResponse:
        try:
            sent = tuple(headers)
            names = {name.lower() for name, _ in sent}
        except Exception as cause:
            raise HttpConnectionError(
                'headers must be pairs of name and value, both bytes') from cause
        if b'accept-encoding' not in names and b'range' not in names:
            sent += ((b'accept-encoding', ACCEPTED),)
        code, fields, response_body = await inner(
            method, url, params=params, headers=sent, body=body, body_args=body_args,
            body_kwargs=body_kwargs, **kwargs)
        codings = codings_of(fields)
        if method == b'HEAD' or code in NOT_DECODED or not codings or set(codings) - set(CODINGS):
            return code, fields, response_body
        if len(codings) > MAX_CODINGS:
            await response_body.aclose()
            raise HttpDataError(f'the response has more than {MAX_CODINGS} content codings')
        return (code, tuple(field for field in fields if field[0] not in REMOVED),
                DecompressedBody(response_body, codings, max_length))

    return cast(Callable[P, Coroutine[Any, Any, Response]], decompressed_request)


def codings_of(fields: Fields) -> list[bytes]:
    """In the order in which they were applied."""
    values = b','.join(value for name, value in fields if name == b'content-encoding')
    codings = [coding.strip(b' \t').lower() for coding in values.split(b',')]
    # RFC 9110 8.4.1.3: x-gzip is gzip.
    return [b'gzip' if coding == b'x-gzip' else coding
            for coding in codings if coding not in (b'', b'identity')]


class DecompressedBody:
    """The decoded content of a response, as an async iterator of bytes.

    It has what a response body has, such as `aclose` and `trailers`, and it may be dropped.
    """

    __slots__ = ('_body', '_decoders', '_codings', '_error', '_has_ended', '__weakref__')

    def __init__(self, body: Any, codings: list[bytes], max_length: int | None) -> None:
        self._body = body
        self._codings = codings
        self._decoders = [Decoder(coding, max_length) for coding in reversed(codings)]
        self._error: HttpDataError | None = None
        self._has_ended = False

    @property
    def trailers(self) -> Fields:
        trailers: Fields = self._body.trailers
        return trailers

    @property
    def request_sent(self) -> bool:
        request_sent: bool = self._body.request_sent
        return request_sent

    def __getattr__(self, name: str) -> Any:
        """What else the body tells of its response, that of other layers included."""
        return getattr(self._body, name)

    def __aiter__(self) -> DecompressedBody:
        return self

    async def __anext__(self) -> bytes:
        if self._error is not None:
            raise self._error
        try:
            chunk = await self._read(len(self._decoders))
        except HttpError:
            raise
        except Exception as cause:
            self._error = self._failure(cause)
            await self.aclose()
            raise self._error from cause
        if not chunk:
            self._has_ended = True
            raise StopAsyncIteration
        return chunk

    def _failure(self, cause: Exception) -> HttpDataError:
        error = HttpDataError(
            f'decoding the response body ({b", ".join(self._codings).decode()}) failed: '
            f'{cause or type(cause).__name__}')
        error.response_started = True
        error.__cause__ = cause
        return error

    async def _read(self, decoded: int) -> bytes:
        """Some of what that many of the decoders make of the body, or `b''` at its end."""
        if not decoded:
            async for data in self._body:
                if data:
                    return bytes(data)
            return b''
        decoder = self._decoders[decoded - 1]
        chunk = b''
        while not chunk:
            if decoder.needs_input:
                data = await self._read(decoded - 1)
                if not data:
                    decoder.check_end()
                    break
                decoder.feed(data)
            else:
                # For other tasks: a few bytes may decode to many of these chunks.
                await asyncio.sleep(0)
            chunk = decoder.decode()
        return chunk

    async def aclose(self) -> None:
        """Close the connection, unless the whole response has arrived.

        Who reads on, and had not come to the end, gets an `HttpDataError`: what has arrived may be
        the whole, but it has not been decoded.
        """
        self._decoders = []
        if self._error is None and not self._has_ended:
            self._error = self._failure(
                ConnectionAbortedError('the response body was closed before its end'))
        await self._body.aclose()


class Decoder:
    """Of one coding. Fed with some bytes, it is to decode until it needs more of them."""

    __slots__ = ('make', 'is_repeated', 'max_length', 'inner', 'is_full', 'data', 'used',
                 'needs_input')

    def __init__(self, coding: bytes, max_length: int | None) -> None:
        self.make, self.is_repeated, _ = CODINGS[coding]
        self.max_length = max_length
        self.inner: Any = None
        # The decompressor has more to give, before it takes more.
        self.is_full = False
        self.data = b''
        self.used = 0
        self.needs_input = True

    def feed(self, data: bytes) -> None:
        self.data = data
        self.used = 0

    def decode(self) -> bytes:
        inner = self.inner
        if inner is None or inner.eof:
            if inner is not None and not self.is_repeated:
                raise ValueError('there is more after the end of the content')
            inner = self.inner = self.make(self.data[self.used])
        piece = b'' if self.is_full else self.data[self.used:self.used + MAX_PIECE]
        chunk: bytes = inner.decompress(piece, MAX_CHUNK)
        unused = inner.unused_data if inner.eof else getattr(inner, 'unconsumed_tail', b'')
        self.used += len(piece) - len(unused)
        self.is_full = not inner.eof and not getattr(inner, 'needs_input', len(chunk) < MAX_CHUNK)
        self.needs_input = self.used == len(self.data) and not self.is_full
        if self.max_length is not None:
            self.max_length -= len(chunk)
            if self.max_length < 0:
                raise ValueError('it is longer than max_length')
        return chunk

    def check_end(self) -> None:
        """No bytes at all are no content: servers that have none may tell a coding of it."""
        if self.inner is not None and not self.inner.eof:
            raise EOFError('the content ended before the end of its coding')


# -------------------------------------------------------------------------------- requests

def compressed(body: Callable[P, AsyncIterator[bytes]], coding: bytes,
               ) -> Callable[P, AsyncIterator[bytes]]:
    """A `body` function for a request, whose content is coded as `content-encoding` has to say.

    - `coding`: `b'gzip'` or `b'deflate'`, or `b'br'` or `b'zstd'` where they are installed.
    """
    if not callable(body):
        raise TypeError(f'body must be a function, got {type(body).__name__}')
    if coding not in CODINGS:
        raise ValueError(f'coding must be one of {", ".join(map(repr, CODINGS))}, got {coding!r}')

    # A second call is to see if the content can be made a second time.
    return repeatable(body, partial(CompressedBody, coding=coding))


class CompressedBody:
    __slots__ = ('_chunks', '_compressor', '__weakref__')

    def __init__(self, chunks: AsyncIterator[bytes], coding: bytes) -> None:
        self._chunks = chunks
        self._compressor = CODINGS[coding][2]()

    def __aiter__(self) -> CompressedBody:
        return self

    async def __anext__(self) -> bytes:
        # If the next chunk raises, the content must not get an end, or it would look whole.
        compressor, self._compressor = self._compressor, None
        if compressor is None:
            raise StopAsyncIteration
        async for chunk in self._chunks:
            if coded := compressor.compress(chunk):
                self._compressor = compressor
                return bytes(coded)
        return bytes(compressor.flush())

    async def aclose(self) -> None:
        self._compressor = None
        if hasattr(self._chunks, 'aclose'):
            await self._chunks.aclose()
