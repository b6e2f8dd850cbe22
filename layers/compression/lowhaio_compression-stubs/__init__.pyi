# Made of lowhaio_compression.py by .ci/stubs.py.

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, ParamSpec
from lowhaio import Fields, Response

__all__ = ['compressed', 'decompressed']
AnyResponse = tuple[bytes, Fields, Any]
P = ParamSpec('P')

def decompressed(
    request: Callable[P, Awaitable[AnyResponse]],
    *,
    max_length: int | None = None,
) -> Callable[P, Coroutine[Any, Any, Response]]: ...

def compressed(
    body: Callable[P, AsyncIterator[bytes]],
    coding: bytes,
) -> Callable[P, AsyncIterator[bytes]]: ...
