"""Content codings for lowhaio: gzip and deflate, and br and zstd where they are installed.

::

    request, close = Pool()
    code, headers, body = await decompressed(request)(b'GET', 'https://example.com/')

    body = compressed(streamed(b'The content'), b'gzip')

`decompressed` is a layer around a `request`, and `compressed` one around a `body`. Both stream:
they hold no more than one chunk and the state of a compressor or decompressor for each coding.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from functools import partial
from importlib import import_module
from operator import itemgetter
from typing import Any, ParamSpec, cast

from lowhaio import (
    ConnectionFacts,
    Fields,
    Headers,
    HttpConnectionError,
    HttpDataError,
    HttpError,
    Phase,
    Response,
    empty_async_iterator,
    repeatable,
)

__all__ = ['compressed', 'decompressed']


def optional(name: str) -> Any:
    """The module of that name, or None if it is not installed."""
    try:
        return import_module(name)
    except ImportError:
        return None


brotli = optional('brotli')
zstd = optional('compression.zstd') or optional('backports.zstd')

# How many codings a response may have, one in the other. Each may multiply the work of the next.
MAX_CODINGS = 5

# How many bytes one step makes at most.
MAX_CHUNK = 64 * 1024

# How many bytes a decompressor is given for one step. It copies those that it does not use.
MAX_PIECE = 16 * 1024

# The size of zstd's window that must be supported, as a power of two: 8 MiB (RFC 9659 3). A larger
# one is refused, since it would have to be held in memory.
ZSTD_WINDOW_LOG = 23

# Responses with these codes have no content, or a part of it, which cannot be decoded alone. What
# follows a 101 is a protocol of its own.
NOT_DECODED = frozenset((b'101', b'204', b'206', b'304'))

# Fields that describe the coded content, and are wrong for the decoded one.
REMOVED = frozenset((b'content-encoding', b'content-length', b'content-digest', b'content-md5',
                     b'digest', b'repr-digest'))

AnyResponse = tuple[bytes, Fields, Any]
# A layer takes the arguments of what it wraps. It returns a body of its own type.
P = ParamSpec('P')


# --------------------------------------------------------------------------------- codings
#
# `CODINGS` has three facts about each name that `content-encoding` may hold: a function that makes
# a decompressor, given the first byte of the content; whether the content may consist of several
# streams, one after the other; and a function that makes a compressor.

class BrotliDecompressor:
    """Brotli's decompressor, with the interface of those of the standard library."""

    # Brotli may pass its own limit by up to 64 KiB, but not if its first 32 KiB reach the limit.
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
    """Brotli's compressor, with the interface of those of the standard library."""

    def __init__(self) -> None:
        # The default, 11, is meant for content that is compressed once and sent often.
        inner = brotli.Compressor(quality=5)
        self.compress = inner.process
        self.flush = inner.finish


def zlib_decompressor(first: int) -> Any:
    """A decompressor for deflate, given the first byte of the content.

    Some senders leave out the zlib header (RFC 9110 8.4.1.2). If there is one, the lower half of
    its first byte is 8.
    """
    return zlib.decompressobj(zlib.MAX_WBITS if first & 15 == 8 else -zlib.MAX_WBITS)


CODINGS: dict[bytes, tuple[Callable[[int], Any], bool, Callable[[], Any]]] = {
    b'gzip': (lambda _: zlib.decompressobj(16 + zlib.MAX_WBITS), True,
              lambda: zlib.compressobj(wbits=16 + zlib.MAX_WBITS)),
    b'deflate': (zlib_decompressor, False, zlib.compressobj),
}
# Before version 1.2, brotli has no bound for what it makes of a few bytes.
if hasattr(getattr(brotli, 'Decompressor', None), 'can_accept_more_data'):
    CODINGS[b'br'] = (lambda _: BrotliDecompressor(), False, BrotliCompressor)
if zstd is not None:
    CODINGS[b'zstd'] = (
        lambda _: zstd.ZstdDecompressor(
            options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG}),
        True, lambda: zstd.ZstdCompressor())
ACCEPTED = b', '.join(CODINGS)

# What is added to the headers of a request, unless they have one of the others already.
ADDED = ((b'accept-encoding', ACCEPTED),)
CHOSEN = frozenset((b'accept-encoding', b'range'))

# The name of a field. Mapped, it takes half the time of a loop, and most responses need no more.
NAME = itemgetter(0)


# ------------------------------------------------------------------------------- responses

def decompressed(request: Callable[P, Awaitable[AnyResponse]], *, max_length: int | None = None,
                 ) -> Callable[P, Coroutine[Any, Any, Response]]:
    """A `request` that asks for compressed content, and returns it decompressed.

    - `max_length`: how many bytes the content of a response may have once it is decompressed. None
      stands for no limit. What is no number of bytes raises ValueError.

    Reading a body raises an `HttpDataError` if its content is longer than that, bad, cut short, or
    followed by more, and closes the body. So does the request if the response has more than five
    codings. Responses without a coding, with one that is not known here, or to a HEAD, are
    returned as they are, and so are those of 101, 204, 206 and 304. See RFC 9110 8.4.
    """
    if not callable(request):
        raise TypeError(f'request must be a coroutine function, got {type(request).__name__}')
    if max_length is not None and (not isinstance(max_length, int) or max_length < 0):
        raise ValueError(f'max_length must be a number of bytes or None, got {max_length!r}')
    inner: Callable[..., Awaitable[AnyResponse]] = request

    async def decompressed_request(
            method: bytes, url: str, params: Any = (), headers: Headers = (),
            body: Any = empty_async_iterator, body_args: Any = (), body_kwargs: Any = (),
            **kwargs: Any) -> AnyResponse:
        try:
            sent = tuple(headers)
            has_choice = False
            for name, _ in sent:
                has_choice = name.lower() in CHOSEN or has_choice
        except Exception as cause:
            error = HttpConnectionError('headers must be pairs of name and value, both bytes')
            error.phase = Phase.REFUSED
            raise error from cause
        if not has_choice:
            sent += ADDED
        # Most requests have no other keywords, and a call with ** takes longer than all else that
        # is done for a response without a coding.
        response = await (inner(
            method, url, params=params, headers=sent, body=body, body_args=body_args,
            body_kwargs=body_kwargs, **kwargs,
        ) if kwargs else inner(
            method, url, params=params, headers=sent, body=body, body_args=body_args,
            body_kwargs=body_kwargs))
        code, fields, response_body = response
        if b'content-encoding' not in map(NAME, fields) or method == b'HEAD' \
                or code in NOT_DECODED:
            return response
        codings = codings_of(value for name, value in fields if name == b'content-encoding')
        if not codings or set(codings) - set(CODINGS):
            return response
        if len(codings) > MAX_CODINGS:
            await response_body.aclose()
            too_many = HttpDataError(f'the response has more than {MAX_CODINGS} content codings')
            too_many.response_started, too_many.phase = True, Phase.HEAD
            raise too_many
        return (code, tuple(field for field in fields if field[0] not in REMOVED),
                DecompressedBody(response_body, codings, max_length))

    return cast(Callable[P, Coroutine[Any, Any, Response]], decompressed_request)


def codings_of(values: Iterable[bytes]) -> list[bytes]:
    """The codings that these `content-encoding` name, in the order in which they were applied."""
    codings = [coding.strip(b' \t').lower() for coding in b','.join(values).split(b',')]
    # x-gzip is another name of gzip (RFC 9110 8.4.1.3).
    return [b'gzip' if coding == b'x-gzip' else coding
            for coding in codings if coding not in (b'', b'identity')]


class DecompressedBody:
    """The decoded content of a response, as an async iterator of bytes.

    It passes on all other attributes of the body that it decodes. If it is dropped unfinished, so
    is that body, which closes its connection.
    """

    __slots__ = ('_body', '_decoders', '_codings', '_error', '_has_ended', '__weakref__')

    def __init__(self, body: Any, codings: list[bytes], max_length: int | None) -> None:
        self._body = body
        self._codings = codings
        self._decoders = [Decoder(coding, max_length) for coding in reversed(codings)]
        self._error: HttpDataError | None = None
        self._has_ended = False

    def __repr__(self) -> str:
        return f'<DecompressedBody {b", ".join(self._codings).decode()} of {self._body!r}>'

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
        """All that the body below tells of its response, what other layers added included."""
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
        error.response_started, error.phase = True, Phase.CONTENT
        error.__cause__ = cause
        return error

    async def _read(self, decoded: int) -> bytes:
        """The next bytes that this many of the decoders make of the body, or `b''` at its end."""
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
                # Other tasks get a turn, since a few bytes may decode to many chunks.
                await asyncio.sleep(0)
            chunk = decoder.decode()
        return chunk

    async def aclose(self) -> None:
        """Close the connection, unless the whole response has arrived.

        If the content has not been decoded to its end, reading on raises an `HttpDataError`, even
        if the whole response has arrived.
        """
        self._decoders = []
        if self._error is None and not self._has_ended:
            self._error = self._failure(
                ConnectionAbortedError('the response body was closed before its end'))
        await self._body.aclose()


class Decoder:
    """Decodes one coding, in bounded steps.

    While `needs_input` is true, it must be given bytes with `feed`. Otherwise `decode` makes the
    next chunk, which may be empty.
    """

    __slots__ = ('make', 'is_repeated', 'max_length', 'inner', 'is_full', 'data', 'used',
                 'needs_input')

    def __init__(self, coding: bytes, max_length: int | None) -> None:
        self.make, self.is_repeated, _ = CODINGS[coding]
        # How many more bytes may come out of it.
        self.max_length = max_length
        # The decompressor of the stream that is being decoded.
        self.inner: Any = None
        # Whether the decompressor has more to give before it can take more.
        self.is_full = False
        # The bytes that it was fed with last, and how many of them have been used.
        self.data = b''
        self.used = 0
        self.needs_input = True

    def __repr__(self) -> str:
        return f'<Decoder of {len(self.data) - self.used} bytes needs_input={self.needs_input}>'

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
        """Raise EOFError if the content has been cut short.

        No bytes at all are allowed: servers name a coding even for content that is empty.
        """
        if self.inner is not None and not self.inner.eof:
            raise EOFError('the content ended before the end of its coding')


# -------------------------------------------------------------------------------- requests

def compressed(body: Callable[P, AsyncIterator[bytes]], coding: bytes,
               ) -> Callable[P, AsyncIterator[bytes]]:
    """A `body` function that sends what `body` yields, compressed.

    - `body`: a function that returns an async iterator of bytes. Its arguments are passed on.
    - `coding`: `b'gzip'` or `b'deflate'`, or `b'br'` or `b'zstd'` where they are installed. Any
      other one raises ValueError.

    The request must have this coding in its `content-encoding`. The length is not known before the
    content is compressed, so the request usually needs `transfer-encoding: chunked`.
    """
    if not callable(body):
        raise TypeError(f'body must be a function, got {type(body).__name__}')
    if coding not in CODINGS:
        raise ValueError(f'coding must be one of {", ".join(map(repr, CODINGS))}, got {coding!r}')

    # A layer may make the request a second time. If the content can be made only once, that is
    # refused, where otherwise an empty content would be sent.
    return repeatable(body, partial(CompressedBody, coding=coding))


class CompressedBody:
    """The compressed content of a request, as an async iterator of bytes."""

    __slots__ = ('_chunks', '_compressor', '__weakref__')

    def __init__(self, chunks: AsyncIterator[bytes], coding: bytes) -> None:
        self._chunks = chunks
        # None once the content has ended, or failed.
        self._compressor = CODINGS[coding][2]()

    def __repr__(self) -> str:
        state = 'has ended' if self._compressor is None else 'goes on'
        return f'<CompressedBody {state} of {self._chunks!r}>'

    def __aiter__(self) -> CompressedBody:
        return self

    async def __anext__(self) -> bytes:
        # The compressor is put back only after a chunk. If the next chunk raises, it is never
        # flushed, since content that was cut short would look whole then.
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
        aclose = getattr(self._chunks, 'aclose', None)
        if aclose is not None:
            await aclose()
