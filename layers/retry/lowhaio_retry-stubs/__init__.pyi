# Made of lowhaio_retry.py by .ci/stubs.py.

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar
from lowhaio import Fields, HttpConnectionError, HttpDataError

__all__ = [
    'DEFAULT_INTERVALS',
    'always',
    'if_idempotent',
    'if_stale',
    'is_lasting',
    'retry',
    'retry_after',
]
Response = tuple[bytes, Fields, Any]
AnyRequest = TypeVar('AnyRequest', bound=Callable[..., Awaitable[Response]])
ShouldRetry = Callable[[bytes, Exception | None], bool]
ShouldRetryResponse = Callable[[bytes, bytes, Fields], bool]
Outcome = Exception | tuple[bytes, Fields]
OnRetry = Callable[[int, float, Outcome], object]
DEFAULT_INTERVALS = ((HttpConnectionError, (0, 0.5, 1)), (HttpDataError, (0, 1, 2, 4)))

def always(method: bytes, error: Exception | None) -> bool: ...

def if_idempotent(method: bytes, error: Exception | None) -> bool: ...

def if_stale(method: bytes, error: Exception | None) -> bool: ...

def is_lasting(error: BaseException) -> bool: ...

def retry(
    request: AnyRequest,
    exception_intervals: Iterable[tuple[type[Exception], Iterable[float]]] = ...,
    *,
    code_intervals: Iterable[tuple[bytes, Iterable[float]]] = (),
    should_retry: ShouldRetry = ...,
    should_retry_response: ShouldRetryResponse | None = None,
    max_retry_after: float = 120,
    jitter: float | None = None,
    max_total: float | None = None,
    max_buffered: int | None = None,
    on_retry: OnRetry | None = None,
) -> AnyRequest: ...

def retry_after(headers: Fields) -> float: ...
