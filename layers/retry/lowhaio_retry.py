"""Makes requests again that failed: a layer around the `request` of lowhaio.

::

    request, close = Pool()
    request = retry(request)
    code, headers, body = await request(b'GET', 'https://example.com/')
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import time
from asyncio import sleep
from collections import deque
from collections.abc import Awaitable, Callable, Container, Iterable, Iterator
from datetime import UTC, datetime
from random import uniform
from typing import Any, TypeVar, cast

from lowhaio import (
    HttpConnectionClosedError,
    HttpConnectionError,
    HttpDataError,
    HttpError,
    HttpHeaderTooLong,
    empty_async_iterator,
    repeatable,
)

# Bytes of the body of a response that is not returned, and seconds for them, so that its
# connection can be used again. Each read counts as a kibibyte more: the smallest takes its time.
MAX_DRAINED = 64 * 1024
DRAIN_TIMEOUT = 1

# The share of its time that is added to a wait, at random, after nothing could be sent. When a
# server comes back, those who could not connect would otherwise all do so together.
CONNECTION_JITTER = 1.0

Fields = tuple[tuple[bytes, bytes], ...]
Response = tuple[bytes, Fields, Any]
# A layer returns the type that it is given: the same arguments, the same body.
AnyRequest = TypeVar('AnyRequest', bound=Callable[..., Awaitable[Response]])
ShouldRetry = Callable[[bytes, Exception | None], bool]
ShouldRetryResponse = Callable[[bytes, bytes, Fields], bool]
# What an attempt ended with: its exception, or code and headers of its response.
Outcome = Exception | tuple[bytes, Fields]
OnRetry = Callable[[int, float, Outcome], object]

# RFC 9110 9.2.2.
IDEMPOTENT = frozenset((b'GET', b'HEAD', b'OPTIONS', b'TRACE', b'PUT', b'DELETE'))

DEFAULT_INTERVALS = (
    (HttpConnectionError, (0, 0.5, 1)),
    (HttpDataError, (0, 1, 2, 4)),
)


# ------------------------------------------------------------- what may be made again at all

def always(method: bytes, error: Exception | None) -> bool:
    return True


def if_idempotent(method: bytes, error: Exception | None) -> bool:
    """What has the same effect when it is made twice, and what was not sent at all."""
    return method in IDEMPOTENT or isinstance(error, HttpConnectionError)


def if_stale(method: bytes, error: Exception | None) -> bool:
    """What the server hung up on without any response on a reused connection, and what was not
    sent at all.

    Most likely it hung up before it saw the request. That is not certain.
    """
    return isinstance(error, HttpConnectionError) or (
        isinstance(error, HttpConnectionClosedError)
        and error.reused and not error.response_started)


def is_lasting(error: BaseException) -> bool:
    """Whether it would come again, so that what failed with it is never made again.

    That is so if it, or a cause of it, says so itself with `is_lasting = True`, is a refusal of
    what the caller gave, of the pool or by its `pool_timeout`, an `HttpHeaderTooLong`, or has the
    `code` 407 of a proxy.
    """
    link: BaseException | None = error
    while link is not None:
        if (getattr(link, 'is_lasting', False) or getattr(link, 'phase', '') in NOT_HELPED
                or getattr(link, 'code', None) == b'407' or isinstance(link, HttpHeaderTooLong)
                or is_of_caller(link)):
            return True
        link = link.__cause__
    return False


NOT_HELPED = ('refused', 'pool')


def is_of_caller(error: BaseException) -> bool:
    """What a body function, a layer or `get_connection` was refused for.

    Subclasses do not count. A certificate that is not accepted, credentials that came as bad JSON
    and bytes that are no UTF-8 are ValueErrors, too, and may be good the next time.
    """
    return isinstance(error, HttpConnectionError) and type(error.__cause__) in (
        TypeError, ValueError)


# -------------------------------------------------------------------------------- the layer

def retry(
        request: AnyRequest,
        exception_intervals: Iterable[
            tuple[type[Exception], Iterable[float]]] = DEFAULT_INTERVALS,
        *, code_intervals: Iterable[tuple[bytes, Iterable[float]]] = (),
        should_retry: ShouldRetry = if_idempotent,
        should_retry_response: ShouldRetryResponse | None = None,
        max_retry_after: float = 120,
        jitter: float | None = None,
        max_total: float | None = None,
        max_buffered: int | None = None,
        on_retry: OnRetry | None = None,
) -> AnyRequest:
    """A `request` that is made again, until its intervals are used up. Times are in seconds.

    - `exception_intervals`: pairs of a class of exceptions and the times to wait after each of
      them. The first pair that fits counts. The last exception is raised as it came, but an
      `HttpConnectionError` as an `HttpDataError` from it if an attempt before may have been sent.
      After those that last, see `is_lasting`, nothing is tried again.
    - `code_intervals`: pairs of a status code and the times to wait after each such response.
      A `retry-after` that is longer counts instead. The last response is returned.
    - `should_retry(method, error)`: if it may be made again. `error` is None after a response.
    - `should_retry_response(method, code, headers)`: asked instead of that after a response.
    - `max_retry_after`: a response whose `retry-after` is longer is returned at once.
    - `jitter`: up to this share of each time is added to it, at random. None: up to as much again
      after an `HttpConnectionError`, and nothing after anything else.
    - `max_total`: of all attempts and the waits between them. If a wait would pass it, the last
      exception is raised, or the last response returned, at once. An attempt that passes it is cut
      off, and an `HttpDataError` raised, from the last exception if there was one.
    - `max_buffered`: bytes. Up to this many of a response's body are read before it is returned,
      and if that fails, the request has failed. A longer body goes on as it comes. None: no body
      is read.
    - `on_retry(attempt, seconds, outcome)`: called before each wait, with the number of the last
      attempt, from 1 on, and its exception, or code and headers of its response as a pair.
    """
    by_class = {kind: checked(intervals) for kind, intervals in exception_intervals}
    by_code = {code: checked(intervals) for code, intervals in code_intervals}
    for kind in by_class:
        if not isinstance(kind, type) or not issubclass(kind, Exception):
            raise TypeError(f'exception_intervals must have subclasses of Exception, got {kind!r}')
    for code in by_code:
        if not isinstance(code, bytes) or not re.fullmatch(rb'[0-9]{3}', code):
            raise ValueError(f'code_intervals must have codes of three digits, got {code!r}')
    for function in (request, should_retry, should_retry_response or always, on_retry or always):
        if not callable(function):
            raise TypeError(f'retry needs functions, got {function!r}')
    checked((max_retry_after, *(each for each in (jitter, max_total) if each is not None)))
    if max_buffered is not None and (not isinstance(max_buffered, int) or max_buffered < 0):
        raise ValueError(f'max_buffered must be a number of bytes or None, got {max_buffered!r}')
    options = Options(by_class, by_code, should_retry, should_retry_response, max_retry_after,
                      jitter, max_total, on_retry)
    is_plain = max_total is None and max_buffered is None

    async def retrying_request(
            method: bytes, url: str, params: Any = (), headers: Any = (),
            body: Any = empty_async_iterator, body_args: Any = (), body_kwargs: Any = (),
            **kwargs: Any) -> Response:
        # Nothing is made for what works at once, or it would be the cost of every request.
        if isinstance(headers, Iterator):
            headers = tuple(headers)
        if body is not empty_async_iterator:
            body = repeatable(body)
            body_args, body_kwargs = reiterable(body_args), reiterable(body_kwargs)
        deadline = math.inf if max_total is None else now() + max_total
        attempts: Attempts | None = None
        try:
            while True:
                try:
                    made = request(
                        method, url, params=params, headers=headers, body=body,
                        body_args=body_args, body_kwargs=body_kwargs, **kwargs)
                    response = await (
                        made if is_plain else in_time(made, deadline, max_buffered, by_code))
                    if response[0] not in by_code:
                        return response
                except Exception as error:
                    attempts = attempts or Attempts(options, method, url, deadline)
                    seconds = attempts.fail(error)
                    if seconds is None:
                        raised = attempts.last_error(error)
                        if raised is error:
                            raise
                        raise raised from attempts.last_cause(error)
                else:
                    attempts = attempts or Attempts(options, method, url, deadline)
                    seconds = attempts.answer(response)
                    if seconds is None:
                        return response
                    await drain(response[2])
                await attempts.wait(seconds)
        finally:
            # Its exception refers to this frame.
            if attempts is not None:
                attempts.last = None

    return cast(AnyRequest, retrying_request)


class Options:
    """The arguments of `retry` that matter once an attempt has failed."""

    __slots__ = ('by_class', 'by_code', 'should_retry', 'should_retry_response',
                 'max_retry_after', 'jitter', 'max_total', 'on_retry')

    def __init__(self, by_class: dict[type[Exception], tuple[float, ...]],
                 by_code: dict[bytes, tuple[float, ...]], should_retry: ShouldRetry,
                 should_retry_response: ShouldRetryResponse | None, max_retry_after: float,
                 jitter: float | None, max_total: float | None,
                 on_retry: OnRetry | None) -> None:
        self.by_class = by_class
        self.by_code = by_code
        self.should_retry = should_retry
        self.should_retry_response = should_retry_response
        self.max_retry_after = max_retry_after
        self.jitter = jitter
        self.max_total = max_total
        self.on_retry = on_retry


class Attempts:
    """Those of one request, from the first one that failed on."""

    __slots__ = ('options', 'method', 'url', 'deadline', 'left', 'count', 'last', 'was_sent',
                 'response_started')

    def __init__(self, options: Options, method: bytes, url: str, deadline: float) -> None:
        self.options = options
        self.method = method
        self.url = url
        self.deadline = deadline
        self.left: dict[object, Iterator[float]] = {
            kind: iter(intervals)
            for kind, intervals in (*options.by_class.items(), *options.by_code.items())}
        self.count = 0
        # The outcome of the last one that is followed by another, and whether any of these may
        # have been received, and was answered.
        self.last: Outcome | None = None
        self.was_sent = self.response_started = False

    def fail(self, error: Exception) -> float | None:
        """How long to wait for the next attempt, or None if there is to be none."""
        self.count += 1
        kind = next((kind for kind in self.options.by_class if isinstance(error, kind)), None)
        seconds = next(self.left.get(kind, iter(())), None)
        if seconds is None or is_lasting(error) or not self.options.should_retry(
                self.method, error):
            return None
        is_sent = not isinstance(error, HttpConnectionError)
        return self.checked(seconds, error, is_sent, 0 if is_sent else CONNECTION_JITTER)

    def answer(self, response: Response) -> float | None:
        """As `fail`."""
        self.count += 1
        code, headers, _ = response
        options = self.options
        seconds = next(self.left[code], None)
        told = retry_after(headers)
        if seconds is None or told > options.max_retry_after or not (
                options.should_retry(self.method, None) if options.should_retry_response is None
                else options.should_retry_response(self.method, code, headers)):
            return None
        return self.checked(max(seconds, told), (code, headers), True, 0)

    def checked(self, seconds: float, outcome: Outcome, is_sent: bool,
                default_jitter: float) -> float | None:
        jitter = default_jitter if self.options.jitter is None else self.options.jitter
        seconds *= uniform(1, 1 + jitter)
        if self.deadline < math.inf and now() + seconds >= self.deadline:
            return None
        self.last = outcome
        self.was_sent = self.was_sent or is_sent
        self.response_started = (self.response_started or isinstance(outcome, tuple)
                                 or getattr(outcome, 'response_started', False))
        return seconds

    async def wait(self, seconds: float) -> None:
        assert self.last is not None
        if self.options.on_retry is not None:
            self.options.on_retry(self.count, seconds, self.last)
        await sleep(seconds)

    def last_error(self, error: Exception) -> Exception:
        """What is raised for the error of the last attempt."""
        if isinstance(error, OutOfTime):
            raised = HttpDataError(
                f'{self.method.decode()} {origin_of(self.url)}: max_total, '
                f'{self.options.max_total:g} seconds, passed in attempt {self.count}'
                f'{self.before()}')
        elif self.was_sent and isinstance(error, HttpConnectionError):
            # Whoever retries around us must know that a server may have received the request.
            raised = HttpDataError(f'{error}{self.before()}')
            raised.reused = error.reused
        else:
            return error
        raised.response_started = self.response_started
        return raised

    def last_cause(self, error: Exception) -> BaseException | None:
        """And its cause. Without a time limit the last error is what is to be known."""
        if not isinstance(error, OutOfTime):
            return error
        return self.last if isinstance(self.last, Exception) else error.__cause__

    def before(self) -> str:
        if self.last is None:
            return ''
        text = str(self.last) if isinstance(self.last, Exception) else self.last[0].decode()
        return f' (the attempt before: {text})'


def origin_of(url: str) -> str:
    """As it is shown: without path, query and userinfo."""
    match = re.match(r'([^:/?#]+://)(?:[^/?#]*@)?([^/?#]*)', url)
    return ''.join(match.groups()) if match is not None else ''


def now() -> float:
    return asyncio.get_running_loop().time()


class OutOfTime(Exception):
    """An attempt was cut off by `max_total`."""

    is_lasting = True


async def in_time(made: Awaitable[Response], deadline: float, max_buffered: int | None,
                  by_code: Container[bytes]) -> Response:
    """The response of an attempt, with the beginning of its body if that is wanted."""
    try:
        async with asyncio.timeout_at(None if deadline == math.inf else deadline) as scope:
            code, headers, body = await made
            # What follows 101 is no content.
            if max_buffered is not None and code != b'101' and code not in by_code:
                body = BegunBody(body)
                await body.begin(max_buffered)
            return code, headers, body
    except TimeoutError as cause:
        if scope.expired():
            raise OutOfTime from cause
        raise


class BegunBody:
    """The content of a response, of which some has been read. Its attributes are those of the
    body that it is read from."""

    __slots__ = ('_body', '_chunks', '_error', '__weakref__')

    def __init__(self, body: Any) -> None:
        self._body = body
        self._chunks: deque[bytes] = deque()
        self._error: HttpDataError | None = None

    async def begin(self, max_length: int) -> None:
        try:
            length = 0
            async for chunk in self._body:
                self._chunks.append(chunk)
                length += len(chunk)
                if length > max_length:
                    break
        except BaseException:
            await self._body.aclose()
            raise

    def __aiter__(self) -> BegunBody:
        return self

    async def __anext__(self) -> bytes:
        if self._error is not None:
            raise self._error
        if self._chunks:
            return self._chunks.popleft()
        chunk: bytes = await anext(self._body)
        return chunk

    async def aclose(self) -> None:
        """Close the connection, unless the whole response has arrived.

        Who reads on, and had not taken all, gets an `HttpDataError`.
        """
        if self._chunks:
            self._chunks.clear()
            cause = ConnectionAbortedError('the response body was closed before its end')
            self._error = HttpDataError(f'reading the response body: {cause}')
            self._error.response_started = True
            self._error.__cause__ = cause
        await self._body.aclose()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)


async def drain(body: Any) -> None:
    left = MAX_DRAINED
    try:
        with contextlib.suppress(HttpError, TimeoutError):
            async with asyncio.timeout(DRAIN_TIMEOUT):
                async for chunk in body:
                    left -= len(chunk) + 1024
                    if left < 0:
                        break
    finally:
        await body.aclose()


def checked(intervals: Iterable[float]) -> tuple[float, ...]:
    intervals = tuple(intervals)
    for seconds in intervals:
        if not isinstance(seconds, (int, float)) or not 0 <= seconds < math.inf:
            raise ValueError(f'retry needs numbers, 0 or more, got {seconds!r}')
    return intervals


def reiterable(values: Any) -> Any:
    """What can be iterated over only once would be missing in the second request."""
    return tuple(values) if isinstance(values, Iterator) else values


# ----------------------------------------------------------------------------------- dates
#
# RFC 9110 5.6.7: three forms, of which the last two are obsolete, but to be understood.

MONTHS = (b'jan', b'feb', b'mar', b'apr', b'may', b'jun', b'jul', b'aug', b'sep', b'oct', b'nov',
          b'dec')
TIME = rb'(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})'
DATES = [re.compile(pattern, re.IGNORECASE) for pattern in (
    rb'[a-z]{3}, (?P<day>[0-9]{2}) (?P<month>[a-z]{3}) (?P<year>[0-9]{4}) %b GMT' % TIME,
    rb'[a-z]{6,9}, (?P<day>[0-9]{2})-(?P<month>[a-z]{3})-(?P<year>[0-9]{2}) %b GMT' % TIME,
    rb'[a-z]{3} (?P<month>[a-z]{3}) (?P<day>[0-9 ][0-9]) %b (?P<year>[0-9]{4})' % TIME)]
SECONDS = re.compile(rb'[0-9]+(?:\.[0-9]*)?')


def retry_after(headers: Fields) -> float:
    """RFC 9110 10.2.3: seconds, or a date. 0 if there is none that can be understood.

    A date is compared with that of the response itself: the clocks of two machines differ.
    """
    value = first_value(headers, b'retry-after')
    if SECONDS.fullmatch(value):
        return float(value)
    date = parse_date(value)
    if date is None:
        return 0
    sent = parse_date(first_value(headers, b'date'))
    return date - (time.time() if sent is None else sent)


def first_value(headers: Fields, wanted: bytes) -> bytes:
    return next((value for name, value in headers if name == wanted), b'')


def parse_date(value: bytes) -> float | None:
    """Seconds since 1970. None for what is no date."""
    match = next(filter(None, (pattern.fullmatch(value) for pattern in DATES)), None)
    if match is None or match['month'].lower() not in MONTHS:
        return None
    year = int(match['year'])
    if len(match['year']) == 2:
        # What would be more than 50 years ahead has passed.
        first = time.gmtime(time.time()).tm_year - 49
        year = first + (year - first) % 100
    try:
        # A leap second is the end of the one before.
        return datetime(year, MONTHS.index(match['month'].lower()) + 1, int(match['day']),
                        int(match['hour']), int(match['minute']), min(int(match['second']), 59),
                        tzinfo=UTC).timestamp()
    except ValueError:
        return None
