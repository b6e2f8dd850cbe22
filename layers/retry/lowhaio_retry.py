"""Makes requests again that failed: a layer around the `request` of lowhaio.

::

    request, close = Pool()
    request = retry(request)
    code, headers, body = await request(b'GET', 'https://example.com/')

This layer decides whether a failed request is made again, and when. It holds nothing between two
requests. `retry` checks its arguments, `Attempts` counts what happened to one request, and
`retry_after` reads how long a server wants a client to wait.
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
    Fields,
    HttpConnectionClosedError,
    HttpConnectionError,
    HttpDataError,
    HttpError,
    HttpHeaderTooLong,
    Phase,
    empty_async_iterator,
    has_arrived,
    repeatable,
)

__all__ = ['DEFAULT_INTERVALS', 'always', 'if_idempotent', 'if_stale', 'is_lasting', 'retry',
           'retry_after']

# How many bytes of the body of a response that is not returned are read so that its connection can
# be used again. Each chunk counts as 1 KiB more than it holds, because even the smallest read
# takes time.
MAX_DRAINED = 64 * 1024

# How many seconds that may take. To wait any longer would cost more than a new connection.
DRAIN_TIMEOUT = 1

# The default of `jitter` after a failure to connect. Without it, all clients that could not
# connect to a server would come back at the same moment.
CONNECTION_JITTER = 1.0

Response = tuple[bytes, Fields, Any]
# A layer returns a function of the type that it was given: same arguments, same response.
AnyRequest = TypeVar('AnyRequest', bound=Callable[..., Awaitable[Response]])
ShouldRetry = Callable[[bytes, Exception | None], bool]
ShouldRetryResponse = Callable[[bytes, bytes, Fields], bool]
# How an attempt ended: with an exception, or with the code and the headers of a response.
Outcome = Exception | tuple[bytes, Fields]
OnRetry = Callable[[int, float, Outcome], object]

# The methods of RFC 9110 9.2.2.
IDEMPOTENT = frozenset((b'GET', b'HEAD', b'OPTIONS', b'TRACE', b'PUT', b'DELETE'))

DEFAULT_INTERVALS = (
    (HttpConnectionError, (0, 0.5, 1)),
    (HttpDataError, (0, 1, 2, 4)),
)
"""The default of `exception_intervals`: the seconds to wait after each kind of failure."""


# ------------------------------------------------------------- what may be made again at all

def always(method: bytes, error: Exception | None) -> bool:
    """For `should_retry`: every request is made again, even if it may have had its effect."""
    return True


def if_idempotent(method: bytes, error: Exception | None) -> bool:
    """The default of `should_retry`: a request is made again if that can do no harm.

    That is so if its method has the same effect when it is carried out twice, or if not one byte
    of the request was sent.
    """
    return method in IDEMPOTENT or isinstance(error, HttpConnectionError)


def if_stale(method: bytes, error: Exception | None) -> bool:
    """For `should_retry`: a request is made again if the server has probably not seen it.

    That is so if not one byte was sent, or if the server closed a reused connection without
    sending any of a response. Then it most likely closed the connection before it saw the request,
    but that is not certain.
    """
    return isinstance(error, HttpConnectionError) or (
        isinstance(error, HttpConnectionClosedError)
        and error.reused and not error.response_started)


def is_lasting(error: BaseException) -> bool:
    """Whether the same request would fail in the same way, so that it is never made again.

    That is so for an error, or for one with such an error among its causes, if it

    - has the attribute `is_lasting = True`,
    - is about an argument that was refused, a closed pool, or a `pool_timeout`,
    - is an `HttpHeaderTooLong`,
    - or has `code = b'407'`, as that of a proxy that wants other credentials.
    """
    link: BaseException | None = error
    while link is not None:
        if (getattr(link, 'is_lasting', False) or getattr(link, 'phase', '') in LASTING_PHASES
                or getattr(link, 'code', None) == b'407' or isinstance(link, HttpHeaderTooLong)
                or is_refusal(link)):
            return True
        link = link.__cause__
    return False


LASTING_PHASES = (Phase.REFUSED, Phase.POOL)


def is_refusal(error: BaseException) -> bool:
    """Whether something that the caller gave was refused, a body function for example.

    A body can also be refused after its beginning was sent, such as one that is shorter than its
    `content-length`. Subclasses of ValueError do not count. They include a certificate that is not
    accepted, credentials that are bad JSON, and bytes that are not UTF-8: all these may be good
    the next time.
    """
    return type(error.__cause__) in (TypeError, ValueError) and (
        isinstance(error, HttpConnectionError) or getattr(error, 'phase', '') == Phase.BODY)


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
    """A `request` that is made again when it fails, until the intervals are used up.

    All times are in seconds. Arguments that make no sense raise TypeError or ValueError at once.

    - `exception_intervals`: pairs of a class of exceptions and the times to wait after each such
      exception. The first pair whose class fits counts. The last exception is raised as it came,
      with one change: an `HttpConnectionError` becomes an `HttpDataError` if an earlier attempt
      may have been sent. After an exception that `is_lasting`, nothing is tried again. One with
      an attribute `retry_after` counts as a response with that field.
    - `code_intervals`: pairs of a status code, as bytes, and the times to wait after each such
      response. If its `retry-after` is longer, that counts. The last response is returned.
    - `should_retry(method, error)`: whether a request may be made again. The error is None after
      a response.
    - `should_retry_response(method, code, headers)`: asked after a response instead of that.
    - `max_retry_after`: a response with a longer `retry-after` is returned at once.
    - `jitter`: a random share of each time, up to this one, is added to it. None stands for 1
      after an `HttpConnectionError`, and for 0 after anything else.
    - `max_total`: how long all attempts and waits may take together. If the next wait would pass
      it, the last outcome is raised or returned at once. An attempt that passes it is cut off,
      and an `HttpDataError` is raised, whose cause is the last exception.
    - `max_buffered`: up to this many bytes of a response's body are read before the response is
      returned. If that fails, the attempt has failed. None: no body is read.
    - `on_retry(attempt, seconds, outcome)`: called before each wait with the number of the attempt
      that failed, from 1 on, and its exception, or the pair of its response's code and headers.
    """
    if not callable(request):
        raise TypeError(f'retry needs functions, got {request!r}')
    return retrying(request, Options(
        exception_intervals, code_intervals, should_retry, should_retry_response,
        max_retry_after, jitter, max_total, max_buffered, on_retry))


def retrying(request: AnyRequest, options: Options) -> AnyRequest:
    by_code, max_buffered, max_total = options.by_code, options.max_buffered, options.max_total

    async def retrying_request(
            method: bytes, url: str, params: Any = (), headers: Any = (),
            body: Any = empty_async_iterator, body_args: Any = (), body_kwargs: Any = (),
            **kwargs: Any) -> Response:
        # The same check as in `reiterable`, without the call of it.
        if type(headers) is not tuple:
            headers = reiterable(headers)
        if body is not empty_async_iterator:
            body = repeatable(body)
            body_args, body_kwargs = reiterable(body_args), reiterable(body_kwargs)
        deadline = math.inf if max_total is None else now() + max_total
        # Made at the first failure, so that a request that succeeds at once does not pay for it.
        attempts: Attempts | None = None
        raised: Exception | None = None
        try:
            while True:
                try:
                    # Most requests have no other keywords, and a call with ** takes longer than
                    # all else that is done for one that succeeds at once.
                    made = request(
                        method, url, params=params, headers=headers, body=body,
                        body_args=body_args, body_kwargs=body_kwargs, **kwargs,
                    ) if kwargs else request(
                        method, url, params=params, headers=headers, body=body,
                        body_args=body_args, body_kwargs=body_kwargs)
                    if max_buffered is not None:
                        made = begun(made, max_buffered, by_code)
                    if max_total is not None:
                        made = in_time(made, deadline)
                    response = await made
                    if response[0] not in by_code:
                        return response
                except Exception as error:
                    attempts = attempts or Attempts(options, method, url, deadline)
                    seconds = attempts.wait_after_error(error)
                    if seconds is None:
                        raised = attempts.last_error(error)
                        if raised is error:
                            raise
                        raise raised from attempts.last_cause(error)
                else:
                    attempts = attempts or Attempts(options, method, url, deadline)
                    seconds = attempts.wait_after_response(response)
                    if seconds is None:
                        return response
                    await drain(response[2])
                await attempts.wait(seconds)
        finally:
            # The exceptions in these refer to this frame, and the frame to them.
            raised = None
            if attempts is not None:
                attempts.last = None

    return cast(AnyRequest, retrying_request)


class Options:
    """The checked arguments of `retry`."""

    __slots__ = ('by_class', 'by_code', 'should_retry', 'should_retry_response',
                 'max_retry_after', 'jitter', 'max_total', 'max_buffered', 'on_retry')

    def __init__(self, exception_intervals: Iterable[tuple[type[Exception], Iterable[float]]],
                 code_intervals: Iterable[tuple[bytes, Iterable[float]]],
                 should_retry: ShouldRetry, should_retry_response: ShouldRetryResponse | None,
                 max_retry_after: float, jitter: float | None, max_total: float | None,
                 max_buffered: int | None, on_retry: OnRetry | None) -> None:
        self.by_class = {kind: checked(intervals) for kind, intervals in exception_intervals}
        self.by_code = {code: checked(intervals) for code, intervals in code_intervals}
        self.should_retry = should_retry
        self.should_retry_response = should_retry_response
        self.max_retry_after = max_retry_after
        self.jitter = jitter
        self.max_total = max_total
        self.max_buffered = max_buffered
        self.on_retry = on_retry
        for kind in self.by_class:
            if not isinstance(kind, type) or not issubclass(kind, Exception):
                raise TypeError(
                    f'exception_intervals must have subclasses of Exception, got {kind!r}')
        for code in self.by_code:
            if not isinstance(code, bytes) or not re.fullmatch(rb'[0-9]{3}', code):
                raise ValueError(f'code_intervals must have codes of three digits, got {code!r}')
        for function in (should_retry, should_retry_response or always, on_retry or always):
            if not callable(function):
                raise TypeError(f'retry needs functions, got {function!r}')
        checked((max_retry_after, *(each for each in (jitter, max_total) if each is not None)))
        if max_buffered is not None and (not isinstance(max_buffered, int) or max_buffered < 0):
            raise ValueError(
                f'max_buffered must be a number of bytes or None, got {max_buffered!r}')


def checked(intervals: Iterable[float]) -> tuple[float, ...]:
    intervals = tuple(intervals)
    for seconds in intervals:
        if not isinstance(seconds, (int, float)) or not 0 <= seconds < math.inf:
            raise ValueError(f'retry needs numbers, 0 or more, got {seconds!r}')
    return intervals


class Attempts:
    """The attempts of one request, from the first one that failed on."""

    __slots__ = ('options', 'method', 'url', 'deadline', 'intervals', 'count', 'last', 'was_sent',
                 'response_started')

    def __init__(self, options: Options, method: bytes, url: str, deadline: float) -> None:
        self.options = options
        self.method = method
        self.url = url
        # In the loop's time.
        self.deadline = deadline
        # The waits that are left, by class of exception and by status code.
        self.intervals: dict[object, Iterator[float]] = {
            kind: iter(intervals)
            for kind, intervals in (*options.by_class.items(), *options.by_code.items())}
        # How many attempts have ended.
        self.count = 0
        # The outcome of the last attempt that is followed by another one.
        self.last: Outcome | None = None
        # Whether any attempt may have been received by its server, and whether any was answered.
        self.was_sent = self.response_started = False

    def __repr__(self) -> str:
        return (f'<Attempts {self.method!r} {origin_of(self.url)} count={self.count} '
                f'was_sent={self.was_sent} response_started={self.response_started}>')

    def wait_after_error(self, error: Exception) -> float | None:
        """The seconds to wait before the next attempt, or None if there must not be one."""
        self.count += 1
        options = self.options
        kind = next((kind for kind in options.by_class if isinstance(error, kind)), None)
        seconds = next(self.intervals.get(kind, iter(())), None)
        # Of a layer that makes errors of responses.
        asked = getattr(error, 'retry_after', 0)
        if (seconds is None or asked > options.max_retry_after or is_lasting(error)
                or not options.should_retry(self.method, error)):
            return None
        is_sent = not isinstance(error, HttpConnectionError)
        return self.decide(max(seconds, asked), error, is_sent,
                           0 if is_sent else CONNECTION_JITTER)

    def wait_after_response(self, response: Response) -> float | None:
        """The seconds to wait before the next attempt, or None if there must not be one."""
        self.count += 1
        code, headers, _ = response
        options = self.options
        seconds = next(self.intervals[code], None)
        asked = retry_after(headers)
        if seconds is None or asked > options.max_retry_after or not (
                options.should_retry(self.method, None) if options.should_retry_response is None
                else options.should_retry_response(self.method, code, headers)):
            return None
        return self.decide(max(seconds, asked), (code, headers), True, 0)

    def decide(self, seconds: float, outcome: Outcome, is_sent: bool,
               default_jitter: float) -> float | None:
        """Add the jitter, see whether there is time left, and if so note the outcome."""
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
        """The exception that is raised when the last attempt has failed with this one."""
        if isinstance(error, OutOfTime):
            raised = HttpDataError(
                f'{self.method.decode()} {origin_of(self.url)}: max_total, '
                f'{self.options.max_total:g} seconds, passed in attempt {self.count}'
                f'{self.before()}')
        elif self.was_sent and isinstance(error, HttpConnectionError):
            # Another layer that retries must know that a server may have received the request.
            raised = HttpDataError(f'{error}{self.before()}')
            raised.reused = error.reused
            raised.phase = error.phase
        else:
            return error
        raised.response_started = self.response_started
        return raised

    def last_cause(self, error: Exception) -> BaseException | None:
        """The cause of the exception that `last_error` has made of this one.

        That an attempt ran out of time explains nothing, so what failed before it is the cause.
        """
        if not isinstance(error, OutOfTime):
            return error
        return self.last if isinstance(self.last, Exception) else error.__cause__

    def before(self) -> str:
        """How the attempt before the last one ended, for an error message."""
        if self.last is None:
            return ''
        text = str(self.last) if isinstance(self.last, Exception) else self.last[0].decode()
        return f' (the attempt before: {text})'


def origin_of(url: str) -> str:
    """The part of a URL that may be shown: no path, no query and no userinfo."""
    match = re.match(r'([^:/?#]+://)(?:[^/?#]*@)?([^/?#]*)', url)
    return ''.join(match.groups()) if match is not None else ''


def now() -> float:
    return asyncio.get_running_loop().time()


class OutOfTime(Exception):
    """An attempt was cut off, because `max_total` seconds have passed."""

    is_lasting = True


async def in_time(made: Awaitable[Response], deadline: float) -> Response:
    """The response of an attempt. Raises `OutOfTime` at the deadline."""
    scope = asyncio.timeout_at(deadline)
    try:
        async with scope:
            return await made
    except TimeoutError as cause:
        if scope.expired():
            raise OutOfTime from cause
        raise


async def begun(made: Awaitable[Response], max_length: int,
                by_code: Container[bytes]) -> Response:
    """The response of an attempt, after its body has ended or more than `max_length` bytes came.

    Those with a code in `by_code` are left as they are.
    """
    response = code, headers, body = await made
    # What follows a 101 is no content, but a protocol of its own. Most small bodies came whole
    # with their heads, and need not be read before they are returned.
    if code in by_code or code == b'101' or has_arrived(body):
        return response
    chunks: deque[bytes] = deque()
    has_ended = True
    try:
        async for chunk in body:
            chunks.append(chunk)
            max_length -= len(chunk)
            if max_length < 0:
                has_ended = False
                break
    except BaseException:
        await body.aclose()
        raise
    return code, headers, BegunBody(body, chunks, has_ended)


class BegunBody:
    """The body of a response, of which the beginning has been read already.

    It passes on all other attributes of the body that it reads from.
    """

    __slots__ = ('_body', '_chunks', '_has_ended', '_error', '__weakref__')

    def __init__(self, body: Any, chunks: deque[bytes], has_ended: bool) -> None:
        self._body = body
        # What has been read, and not handed out yet, and whether that is all there is.
        self._chunks = chunks
        self._has_ended = has_ended
        self._error: HttpDataError | None = None

    def __repr__(self) -> str:
        return f'<BegunBody {sum(map(len, self._chunks))} bytes held of {self._body!r}>'

    def __aiter__(self) -> BegunBody:
        return self

    async def __anext__(self) -> bytes:
        if self._error is not None:
            raise self._error
        if self._chunks:
            return self._chunks.popleft()
        if self._has_ended:
            raise StopAsyncIteration
        chunk: bytes = await anext(self._body)
        return chunk

    async def aclose(self) -> None:
        """Close the connection, unless the whole response has arrived.

        If some of the body has not been taken yet, reading on raises an `HttpDataError`.
        """
        if self._chunks:
            self._chunks.clear()
            cause = ConnectionAbortedError('the response body was closed before its end')
            self._error = HttpDataError(f'reading the response body: {cause}')
            self._error.response_started, self._error.phase = True, Phase.CONTENT
            self._error.__cause__ = cause
        await self._body.aclose()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)


# Each layer that makes a second request has its own copy of these two functions. A module that
# they share would be one more thing to install, and lowhaio itself has no use for them.

def reiterable(values: Any) -> Any:
    """The same values, as a tuple if they could be iterated over only once.

    Otherwise the second request would be sent without them.
    """
    # Nearly all values are tuples, and looking at the class alone is the cheapest check.
    if type(values) is tuple:
        return values
    return tuple(values) if isinstance(values, Iterator) else values


async def drain(body: Any) -> None:
    """Read the rest of a response body, so that its connection can be used again, and close it.

    If the body is too long, too slow or cut off, its connection is closed instead.
    """
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


# ----------------------------------------------------------------------------------- dates
#
# RFC 9110 5.6.7 has three forms of a date. The last two are obsolete, but must be understood.

MONTHS = (b'jan', b'feb', b'mar', b'apr', b'may', b'jun', b'jul', b'aug', b'sep', b'oct', b'nov',
          b'dec')
TIME = rb'(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})'
DATES = [re.compile(pattern, re.IGNORECASE) for pattern in (
    rb'[a-z]{3}, (?P<day>[0-9]{2}) (?P<month>[a-z]{3}) (?P<year>[0-9]{4}) %b GMT' % TIME,
    rb'[a-z]{6,9}, (?P<day>[0-9]{2})-(?P<month>[a-z]{3})-(?P<year>[0-9]{2}) %b GMT' % TIME,
    rb'[a-z]{3} (?P<month>[a-z]{3}) (?P<day>[0-9 ][0-9]) %b (?P<year>[0-9]{4})' % TIME)]
SECONDS = re.compile(rb'[0-9]+(?:\.[0-9]*)?')


def retry_after(headers: Fields) -> float:
    """The seconds that `retry-after` asks a client to wait (RFC 9110 10.2.3).

    It holds seconds, or a date. A date is compared with the `date` of the response, since the
    clocks of two machines differ, and with our clock if there is none. The result is 0 if there is
    no such field or it cannot be understood, and negative for a date that has passed.
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
    """A date in seconds since 1970, or None if it is none."""
    match = next(filter(None, (pattern.fullmatch(value) for pattern in DATES)), None)
    if match is None or match['month'].lower() not in MONTHS:
        return None
    year = int(match['year'])
    if len(match['year']) == 2:
        # A year that seems to be more than 50 years ahead is in the past (RFC 9110 5.6.7).
        first = time.gmtime(time.time()).tm_year - 49
        year = first + (year - first) % 100
    try:
        # datetime has no leap seconds, so one counts as the second before it.
        return datetime(year, MONTHS.index(match['month'].lower()) + 1, int(match['day']),
                        int(match['hour']), int(match['minute']), min(int(match['second']), 59),
                        tzinfo=UTC).timestamp()
    except ValueError:
        return None
