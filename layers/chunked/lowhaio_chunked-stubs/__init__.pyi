# Made of lowhaio_chunked.py by .ci/stubs.py.

from collections.abc import AsyncIterator, Callable, Iterable
from typing import ParamSpec

__all__ = ['chunked']
P = ParamSpec('P')
Trailers = Callable[[], Iterable[tuple[bytes, bytes]]]

def chunked(
    body: Callable[P, AsyncIterator[bytes]],
    *,
    trailers: Trailers = ...,
) -> Callable[P, AsyncIterator[bytes]]: ...
