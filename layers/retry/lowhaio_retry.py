"""Makes requests again that failed: a layer around the `request` of lowhaio.

::

    request, close = Pool()
    request = retry(request)
    code, headers, body = await request(b'GET', 'https://example.com/')
"""

from __future__ import annotations

import calendar
import contextlib
import math
import re
import time
from asyncio import sleep
from collections.abc import Awaitable, Callable, Iterable, Iterator
from email.utils import parsedate
from random import uniform
from typing import Any, TypeVar, cast

from lowhaio import (
    HttpConnectionError,
    HttpDataError,
    HttpError,
    empty_async_iterator,
    repeatable,
)

Fields = tuple[tuple[bytes, bytes], ...]
Response = tuple[bytes, Fields, Any]
# A layer returns the type that it is given: the same arguments, the same body.
AnyRequest = TypeVar('AnyRequest', bound=Callable[..., Awaitable[Response]])
ShouldRetry = Callable[[bytes, Exception | None], bool]

# RFC 9110 9.2.2.
IDEMPOTENT = frozenset((b'GET', b'HEAD', b'OPTIONS', b'TRACE', b'PUT', b'DELETE'))

DEFAULT_INTERVALS = (
    (HttpConnectionError, (0, 0, 0)),
    (HttpDataError, (0, 1, 2, 4)),
)


# ------------------------------------------------------------- what may be made again at all

def always(method: bytes, error: Exception | None) -> bool:
    return True


def if_idempotent(method: bytes, error: Exception | None) -> bool:
    """What has the same effect when it is made twice, and what was not sent at all."""
    return method in IDEMPOTENT or isinstance(error, HttpConnectionError)


def if_stale(method: bytes, error: Exception | None) -> bool:
    """What failed on a reused connection without any response, and what was not sent at all.

    Most likely the server hung up before it saw the request. That is not certain.
    """
    return isinstance(error, HttpConnectionError) or (
        isinstance(error, HttpError) and error.reused and not error.response_started)


# -------------------------------------------------------------------------------- the layer

def retry(
        request: AnyRequest,
        exception_intervals: Iterable[
            tuple[type[Exception], Iterable[float]]] = DEFAULT_INTERVALS,
        *, code_intervals: Iterable[tuple[bytes, Iterable[float]]] = (),
        should_retry: ShouldRetry = always,
        max_retry_after: float = 60,
        jitter: float = 0,
) -> AnyRequest:
    """A `request` that is made again, until its intervals are used up. Times are in seconds.

    - `exception_intervals`: pairs of a class of exceptions and the times to wait after each of
      them. The first pair that fits counts. The last exception is raised as it came.
    - `code_intervals`: pairs of a status code and the times to wait after each such response.
      A `retry-after` that is longer counts instead. The last response is returned.
    - `should_retry(method, error)`: if it may be made again. `error` is None after a response.
    - `max_retry_after`: a response whose `retry-after` is longer is returned.
    - `jitter`: up to this share of each time is added to it, at random.
    """
    by_class = {kind: checked(intervals) for kind, intervals in exception_intervals}
    by_code = {code: checked(intervals) for code, intervals in code_intervals}
    for kind in by_class:
        if not isinstance(kind, type) or not issubclass(kind, Exception):
            raise TypeError(f'exception_intervals must have subclasses of Exception, got {kind!r}')
    for code in by_code:
        if not isinstance(code, bytes) or not re.fullmatch(rb'[0-9]{3}', code):
            raise ValueError(f'code_intervals must have codes of three digits, got {code!r}')
    for function in (request, should_retry):
        if not callable(function):
            raise TypeError(f'retry needs functions, got {function!r}')
    checked((max_retry_after, jitter))

    async def retrying_request(
            method: bytes, url: str, params: Any = (), headers: Any = (),
            body: Any = empty_async_iterator, body_args: Any = (), body_kwargs: Any = (),
            **kwargs: Any) -> Response:
        headers, body_args, body_kwargs = map(reiterable, (headers, body_args, body_kwargs))
        body = repeatable(body)
        after_class = {kind: iter(intervals) for kind, intervals in by_class.items()}
        after_code = {code: iter(intervals) for code, intervals in by_code.items()}
        sent = 0
        while True:
            try:
                response = await request(
                    method, url, params=params, headers=headers, body=body,
                    body_args=body_args, body_kwargs=body_kwargs, **kwargs)
            except Exception as error:
                fits = (left for kind, left in after_class.items() if isinstance(error, kind))
                seconds = next(next(fits, iter(())), None)
                if seconds is None or not should_retry(method, error):
                    if sent and isinstance(error, HttpConnectionError):
                        raise as_sent(error, sent) from error
                    raise
                sent += not isinstance(error, HttpConnectionError)
            else:
                code, response_headers, response_body = response
                seconds = next(after_code.get(code, iter(())), None)
                told = retry_after(response_headers)
                if seconds is None or told > max_retry_after or not should_retry(method, None):
                    return response
                seconds = max(seconds, told)
                sent += 1
                await response_body.aclose()
            await sleep(seconds * uniform(1, 1 + jitter))

    return cast(AnyRequest, retrying_request)


def as_sent(error: HttpConnectionError, sent: int) -> HttpDataError:
    """Whoever retries around us must know that a server may have received the request."""
    raised = HttpDataError(f'after {sent} requests that were sent: {error}')
    raised.reused = error.reused
    raised.response_started = True
    return raised


def checked(intervals: Iterable[float]) -> tuple[float, ...]:
    intervals = tuple(intervals)
    for seconds in intervals:
        if not isinstance(seconds, (int, float)) or not 0 <= seconds < math.inf:
            raise ValueError(f'retry needs numbers, 0 or more, got {seconds!r}')
    return intervals


def reiterable(values: Any) -> Any:
    """What can be iterated over only once would be missing in the second request."""
    return tuple(values) if isinstance(values, Iterator) else values


def retry_after(headers: Fields) -> float:
    """RFC 9110 10.2.3: seconds, or a date. 0 if there is none that can be understood."""
    value = next((value for name, value in headers if name == b'retry-after'), b'')
    if value.isdigit():
        return float(value)
    with contextlib.suppress(ValueError, OverflowError):
        date = parsedate(value.decode('latin-1'))
        if date is not None:
            return calendar.timegm(date) - time.time()
    return 0
