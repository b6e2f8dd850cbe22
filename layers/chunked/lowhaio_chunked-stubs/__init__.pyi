# Made of lowhaio_chunked.py by .ci/stubs.py.

from collections.abc import AsyncIterator, Callable
from typing import ParamSpec
from lowhaio import Headers

__all__ = ['chunked']
P = ParamSpec('P')
Trailers = Callable[[], Headers]

def chunked(
    body: Callable[P, AsyncIterator[bytes]],
    *,
    trailers: Trailers = ...,
) -> Callable[P, AsyncIterator[bytes]]: ...
