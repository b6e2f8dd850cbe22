"""Encodes request bodies whose length is not known before: a layer around a `body` for lowhaio.

::

    request, close = Pool()
    code, headers, body = await request(
        b'POST', 'https://example.com/', headers=((b'transfer-encoding', b'chunked'),),
        body=chunked(rows))
"""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from typing import ParamSpec

from lowhaio import repeatable

# The arguments of a body stay those of what is encoded.
P = ParamSpec('P')
Trailers = Callable[[], Iterable[tuple[bytes, bytes]]]

TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 5.6.2
FIELD_VALUE = re.compile(rb'[^\x00-\x08\x0a-\x1f\x7f]*')  # RFC 9110 5.5

# RFC 9110 6.5.1: a trailer would come too late for them.
NOT_IN_TRAILERS = frozenset((b'content-length', b'host', b'trailer', b'transfer-encoding'))


def chunked(body: Callable[P, AsyncIterator[bytes]],
            *, trailers: Trailers = tuple) -> Callable[P, AsyncIterator[bytes]]:
    """A `body` that sends what `body` yields as chunks (RFC 9112 7.1), with the last chunk after
    it.

    The request must have `transfer-encoding: chunked`. `trailers` is called when `body` has
    ended, and returns the pairs of name and value, both bytes, that follow it.
    """
    for function in (body, trailers):
        if not callable(function) or inspect.iscoroutinefunction(function):
            raise TypeError(f'chunked needs functions that are not coroutines, got {function!r}')

    # A second call is to see if the content can be made a second time. Without it, the last chunk
    # alone would be sent.
    return repeatable(body, partial(Chunks, trailers=trailers))


class Chunks:
    """The encoded body, as an async iterator of bytes."""

    __slots__ = ('_data', '_trailers', '_is_done', '__weakref__')

    def __init__(self, data: AsyncIterator[bytes], trailers: Trailers) -> None:
        self._data = data
        self._trailers = trailers
        self._is_done = False

    def __aiter__(self) -> Chunks:
        return self

    async def __anext__(self) -> bytes:
        if self._is_done:
            raise StopAsyncIteration
        # If the next line raises, there must never be a last chunk, or a part would look whole.
        self._is_done = True
        async for data in self._data:
            if not isinstance(data, bytes):
                data = bytes(memoryview(data))
            # An empty one would be the last.
            if data:
                self._is_done = False
                return b'%x\r\n%b\r\n' % (len(data), data)
        return b'0\r\n%b\r\n' % b''.join(map(trailer_line, self._trailers()))

    async def aclose(self) -> None:
        self._is_done = True
        if hasattr(self._data, 'aclose'):
            await self._data.aclose()


def trailer_line(field: tuple[bytes, bytes]) -> bytes:
    name, value = field
    if not TOKEN.fullmatch(name) or name.lower() in NOT_IN_TRAILERS:
        raise ValueError(f'trailers must have tokens as names, and none that tells of the '
                         f'framing, got {name[:60]!r}')
    if not FIELD_VALUE.fullmatch(value):
        raise ValueError(f'trailers must not have control characters in a value: see that of '
                         f'{name[:60]!r}')
    return name + b': ' + value + b'\r\n'
