"""Encodes request bodies whose length is not known before: a layer around a `body` for lowhaio.

::

    request, close = Pool()
    code, headers, body = await request(
        b'POST', 'https://example.com/', headers=((b'transfer-encoding', b'chunked'),),
        body=chunked(rows))

This layer owns the framing of a request body: the line before each chunk, the last chunk and the
trailers. The bytes in between are those of the `body` that it wraps.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import ParamSpec

from lowhaio import Headers, repeatable

__all__ = ['chunked']

# The encoded body takes the arguments of the body that is encoded.
P = ParamSpec('P')
Trailers = Callable[[], Headers]

TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 5.6.2
FIELD_VALUE = re.compile(rb'[^\x00-\x08\x0a-\x1f\x7f]*')  # RFC 9110 5.5

# Fields that must come before the content, since they tell how to read it (RFC 9110 6.5.1).
NOT_IN_TRAILERS = frozenset((b'content-length', b'host', b'trailer', b'transfer-encoding'))


def chunked(body: Callable[P, AsyncIterator[bytes]],
            *, trailers: Trailers = tuple) -> Callable[P, AsyncIterator[bytes]]:
    """A `body` function that sends what `body` yields in the chunked coding (RFC 9112 7.1).

    - `body`: a function that returns an async iterator of bytes. Its arguments are passed on.
    - `trailers`: called without arguments when `body` has ended. It returns an iterable of pairs
      of a name and a value, both bytes, which are sent after the last chunk. A name that is no
      token or tells of the framing, or a value with control characters, raises ValueError.

    The request must have `transfer-encoding: chunked`. Anything but functions raises TypeError at
    once, and so do coroutine functions.
    """
    for function in (body, trailers):
        if not callable(function) or inspect.iscoroutinefunction(function):
            raise TypeError(f'chunked needs functions that are not coroutines, got {function!r}')

    # A layer may make the request a second time. If the content can be made only once, that is
    # refused, where otherwise the last chunk alone would be sent.
    return repeatable(body, partial(Chunks, trailers=trailers))


class Chunks:
    """The encoded body, as an async iterator of bytes."""

    __slots__ = ('_data', '_trailers', '_is_done', '__weakref__')

    def __init__(self, data: AsyncIterator[bytes], trailers: Trailers) -> None:
        self._data = data
        self._trailers = trailers
        self._is_done = False

    def __repr__(self) -> str:
        return f'<Chunks {"has ended" if self._is_done else "goes on"} of {self._data!r}>'

    def __aiter__(self) -> Chunks:
        return self

    async def __anext__(self) -> bytes:
        if self._is_done:
            raise StopAsyncIteration
        # This is undone only after a chunk. If the next line raises, there is never a last chunk,
        # since a body that was cut short would look whole then.
        self._is_done = True
        async for data in self._data:
            if not isinstance(data, bytes):
                data = bytes(memoryview(data))
            # An empty chunk would end the body, so it is skipped.
            if data:
                self._is_done = False
                return b'%x\r\n%b\r\n' % (len(data), data)
        return b'0\r\n%b\r\n' % b''.join(map(trailer_line, self._trailers()))

    async def aclose(self) -> None:
        self._is_done = True
        aclose = getattr(self._data, 'aclose', None)
        if aclose is not None:
            await aclose()


def trailer_line(field: tuple[bytes, bytes]) -> bytes:
    name, value = field
    if not TOKEN.fullmatch(name) or name.lower() in NOT_IN_TRAILERS:
        raise ValueError(f'trailers must have tokens as names, and none that tells of the '
                         f'framing, got {name[:60]!r}')
    if not FIELD_VALUE.fullmatch(value):
        raise ValueError(f'trailers must not have control characters in a value: see that of '
                         f'{name[:60]!r}')
    return name + b': ' + value + b'\r\n'
