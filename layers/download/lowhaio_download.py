"""Downloads a URL to a file, whole and of one version: a layer that uses the `request` of lowhaio.

::

    request, close = Pool()
    done = await download(request, 'https://example.com/archive.zip', 'archive.zip')

While a file is not whole, what has come is in `archive.zip.part`, and what that is a part of is
told by `archive.zip.part-state`. This module, from top to bottom: `download`, and what it returns
and raises; `Job`, which makes the requests; `Attempts`, which decides whether another one is made;
`Part`, which owns both files and all that has to survive a crash; and what fields say.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import stat
from asyncio import sleep
from collections.abc import Awaitable, Callable, Iterable, Iterator
from email.utils import parsedate_to_datetime
from functools import partial
from itertools import islice
from pathlib import Path
from random import uniform
from typing import Any, NamedTuple, NoReturn

from lowhaio import (
    Fields,
    Headers,
    HttpConnectionError,
    HttpDataError,
    HttpError,
    Params,
    encode_params,
)
from lowhaio_retry import is_lasting, retry_after

__all__ = [
    'Downloaded',
    'DownloadBusyError',
    'DownloadDigestError',
    'DownloadError',
    'DownloadStatusError',
    'download',
]

# Seconds to wait after attempts that have failed. To each, up to half of it is added.
PAUSES = (1, 2, 4, 8, 16)
JITTER = 0.5

# Bytes of one range, where several are on their way at once. With 8 MiB, a request of 50 ms takes
# a small part of the time that the range itself takes at 100 MB/s.
PART_SIZE = 8 * 2 ** 20

# After so many bytes the disk is waited for, in a thread. So what the system holds and has not
# written yet is bounded, and a write in the thread of the loop seldom has to wait for a disk.
SYNC_SIZE = 64 * 2 ** 20

# What is read of a response that is not wanted: the first bytes are for the error, and the rest
# lets the connection be used again.
MAX_TOLD = 1024
MAX_DRAINED = 64 * 1024
DRAIN_TIMEOUT = 1

# Bytes that are hashed at a time, in a thread.
HASH_SIZE = 2 ** 20

# A date is a strong validator only if the content has not changed for a while: RFC 9110 8.8.2.2
# asks for a second if both dates are of the same clock, and otherwise for enough to make up for
# what clocks differ by, which was 60 seconds in RFC 7232.
MIN_AGE = 60

# The algorithms of RFC 9530 that are not deprecated, and their names in hashlib.
ALGORITHMS = {'sha-256': 'sha256', 'sha-512': 'sha512'}

REDIRECTS = frozenset((b'301', b'302', b'303', b'307', b'308'))

# Fields that are set here for each request.
OWN_FIELDS = frozenset((b'range', b'if-range', b'accept-encoding'))

Response = tuple[bytes, Fields, Any]
Request = Callable[..., Awaitable[Response]]
OnProgress = Callable[[int, int | None], object]
OnRetry = Callable[[int, float, Exception], object]
# From the first byte to the one behind the last.
Extent = tuple[int, int]


# ------------------------------------------------------------------------------------ public names

class Downloaded(NamedTuple):
    """A file that is whole.

    - `path`: where it is.
    - `size`: its bytes.
    - `resumed_from`: how many of these an earlier call had left.
    - `verified`: the names of the digests that it has, in the words of hashlib: `('sha256',)`.
    - `headers`: those of the last response, and `url` the one that was asked for. Both may hold
      secrets, so they are not in the `repr`.
    """

    path: Path
    size: int
    resumed_from: int
    verified: tuple[str, ...]
    headers: Fields
    url: str

    def __repr__(self) -> str:
        return (f'Downloaded(path={self.path!r}, size={self.size}, '
                f'resumed_from={self.resumed_from}, verified={self.verified})')


class DownloadError(Exception):
    """The file is not there, or what was there before still is."""


class DownloadStatusError(DownloadError):
    """The server answered with something else than the file.

    `code` and `headers` are those of the response, and `content` the first bytes of its body.
    """

    def __init__(self, text: str, code: bytes, headers: Fields, content: bytes) -> None:
        super().__init__(text)
        self.code = code
        self.headers = headers
        self.content = content


class DownloadDigestError(DownloadError):
    """What came has another digest than the server, or the caller, says."""


class DownloadBusyError(DownloadError):
    """Another download to the same path is under way, in this process or in another one."""


async def download(
        request: Request, url: str, path: str | os.PathLike[str], params: Params = (),
        headers: Headers = (), *, digest: tuple[str, str | bytes] | None = None,
        pauses: Iterable[float] = PAUSES, jitter: float = JITTER, max_retry_after: float = 120,
        parallel: int = 1, part_size: int = PART_SIZE, keep_partial: bool = True,
        fsync: bool = True, resource: str | None = None, on_progress: OnProgress | None = None,
        on_retry: OnRetry | None = None, **kwargs: Any) -> Downloaded:
    """Download a URL to a file, and go on where an earlier call was cut off.

    - `digest`: a name of hashlib and the digest that the file must have, as bytes or in hex.
    - `pauses`: seconds to wait after an attempt that has failed. When all have passed, the
      download fails. They begin anew when bytes have come. To each, up to `jitter` times as much
      is added.
    - `max_retry_after`: how many seconds a `retry-after` of the server may ask for.
    - `parallel`: how many ranges of `part_size` bytes are on their way at once.
    - `keep_partial`: whether a failure leaves what has come, so that a later call can go on.
    - `fsync`: whether the file is on the disk, and not only with the system, before it gets its
      name.
    - `resource`: what tells that two calls want the same file, in place of the URL. For URLs that
      change each time, such as signed ones.
    - `on_progress`: called with the number of bytes that are there and of all, which is None as
      long as it is not known, once for each chunk.
    - `on_retry`: called before each pause with the number of attempts that have failed since bytes
      came last, the seconds, and the exception.

    All other keywords are passed on to `request`. Raises a `DownloadError`, an `OSError` of the
    file system, an `HttpError` that would come again, such as one for arguments that are refused,
    and ValueError and TypeError for arguments that are refused here. After the first request, an
    `HttpConnectionError` becomes an `HttpDataError`.
    """
    options = Options(digest, pauses, jitter, max_retry_after, parallel, part_size, fsync,
                      on_progress or ignored, on_retry or ignored)
    headers = tuple(headers)
    for name, _ in headers:
        if name.lower() in OWN_FIELDS:
            raise ValueError(f'headers must not have {name!r}, because download sends its own')
    asked = f'{url.partition("#")[0]}\n{encode_params(params)}\n{kwargs.get("target")!r}'
    # What can not be encoded is refused by the request, without showing it.
    identity = hashlib.sha256(
        (asked if resource is None else resource).encode('utf-8', 'surrogatepass')).hexdigest()
    with contextlib.closing(Part(Path(path), identity, keep_partial)) as part:
        ask = partial(request, b'GET', url, params=params, **kwargs)
        return await Job(ask, url, headers, options, part).run()


def ignored(*_: object) -> None:
    """In place of a callback that was not given."""


class Options:
    """The checked options of `download`."""

    __slots__ = ('digest', 'pauses', 'jitter', 'max_retry_after', 'parallel', 'part_size', 'fsync',
                 'on_progress', 'on_retry')

    def __init__(self, digest: tuple[str, str | bytes] | None, pauses: Iterable[float],
                 jitter: float, max_retry_after: float, parallel: int, part_size: int,
                 fsync: bool, on_progress: OnProgress, on_retry: OnRetry) -> None:
        self.digest = {} if digest is None else checked_digest(*digest)
        self.pauses = tuple(pauses)
        self.jitter = jitter
        self.max_retry_after = max_retry_after
        self.parallel = parallel
        self.part_size = part_size
        self.fsync = fsync
        self.on_progress = on_progress
        self.on_retry = on_retry
        for seconds in (*self.pauses, jitter, max_retry_after):
            if not isinstance(seconds, (int, float)) or not 0 <= seconds < math.inf:
                raise ValueError(f'download needs numbers, 0 or more, got {seconds!r}')
        for name, count in (('parallel', parallel), ('part_size', part_size)):
            if not isinstance(count, int) or count < 1:
                raise ValueError(f'{name} must be a whole number, 1 or more, got {count!r}')
        for function in (on_progress, on_retry):
            if not callable(function):
                raise TypeError(f'download needs functions, got {function!r}')


def checked_digest(name: str, value: str | bytes) -> dict[str, bytes]:
    """By the name of its algorithm, as bytes."""
    if name not in hashlib.algorithms_available or not (size := hashlib.new(name).digest_size):
        raise ValueError(f'digest must have an algorithm of hashlib, got {name!r}')
    try:
        digest = bytes.fromhex(value) if isinstance(value, str) else bytes(value)
    except ValueError as cause:
        raise ValueError('digest must be bytes or hex, got other characters') from cause
    if len(digest) != size:
        raise ValueError(f'digest must have {size} bytes for {name}, got {len(digest)}')
    return {name: digest}


# ------------------------------------------------------------------------------------ the requests
#
# A stretch is what one loop of attempts fetches: the rest of the file, or with `parallel` one
# piece of it. Its position moves with each byte that is written. A response is first opened, which
# decides where its bytes belong, and then taken, which writes them.
#
# An attempt ends with an HttpError or a Passing, and then the next one goes on at the position;
# with a Changed, and then all begins anew, because what is there and what came are not of one
# file; or with anything else, and then the download has failed.

class Passing(Exception):
    """An attempt failed, and another one may succeed after so many seconds."""

    def __init__(self, text: str, seconds: float = 0) -> None:
        super().__init__(text)
        self.seconds = seconds


class WrongContent(Passing):
    """A response has not the digest that its own `content-digest` says."""


class Changed(Exception):
    """The file on the server is not the one of which a part is there."""


class Unusable(Changed):
    """It can not be told whether a range is of the file of which a part is there."""


class Stretch:
    """What is still to be fetched. `stop` is None as long as the end is not known."""

    __slots__ = ('position', 'stop', 'is_piece')

    def __init__(self, position: int, stop: int | None, is_piece: bool = False) -> None:
        self.position = position
        self.stop = stop
        # Of a piece, the end is asked for, too.
        self.is_piece = is_piece

    def __repr__(self) -> str:
        return f'<Stretch {self.position} to {self.stop} is_piece={self.is_piece}>'

    @property
    def is_range(self) -> bool:
        return self.position > 0 or self.is_piece


class Answer(NamedTuple):
    """A response whose content has its place in the file. `stop` is None if that is not known."""

    start: int
    stop: int | None
    is_range: bool
    headers: Fields
    body: Any


class Job:
    """One call of `download`."""

    __slots__ = ('ask', 'url', 'headers', 'options', 'part', 'parallel', 'is_together',
                 'restarts', 'was_wrong', 'was_sent', 'is_telling', 'last_headers')

    def __init__(self, ask: Request, url: str, headers: Fields, options: Options,
                 part: Part) -> None:
        self.ask = ask
        self.url = url
        self.headers = headers
        self.options = options
        self.part = part
        self.parallel = options.parallel
        # Whether several requests are under way, so that none of them can begin the file anew.
        self.is_together = False
        # How often something was there, and all began anew.
        self.restarts = 0
        # Whether that was because of a digest of the whole file.
        self.was_wrong = False
        # Whether a server may have seen any request.
        self.was_sent = False
        # Whether `on_progress` is being called. If it still is later on, it has raised.
        self.is_telling = False
        self.last_headers: Fields = ()

    def __repr__(self) -> str:
        return f'<Job {origin_of(self.url)} {self.part!r} restarts={self.restarts}>'

    async def run(self) -> Downloaded:
        part = self.part
        while True:
            try:
                await self.fetch()
                verified = await self.verify()
                break
            except Changed as error:
                part.forget()
                self.count_restart(error)
        await part.finish(self.options.fsync)
        return Downloaded(part.path, part.done, part.resumed_from, verified, self.last_headers,
                          self.url)

    def count_restart(self, error: Changed) -> None:
        """A server whose file changes all the time is not asked for ever."""
        self.restarts += 1
        if isinstance(error, Unusable):
            self.parallel = 1
        if self.restarts > max(1, len(self.options.pauses)):
            raise DownloadError(f'{self.where()} gave up after {self.restarts - 1} times that all '
                                f'began anew: {error}') from error

    def where(self) -> str:
        return f'GET {origin_of(self.url)} to {self.part.path}:'

    # -- all that is missing

    async def fetch(self) -> None:
        part = self.part
        size = self.options.part_size
        extent = next(part.missing(size), None) if self.parallel > 1 else None
        if extent is None:
            part.make_plain()
            await self.fetch_stretch(part.rest())
            return
        first = Stretch(*extent, is_piece=True)
        answer = await self.first_answer(first)
        try:
            if not answer.is_range:
                await self.fetch_stretch(first, answer)
                return
            part.make_sparse()
            # Only now the end is known. The first piece is under way.
            await self.together(first, answer, islice(part.missing(size), 1, None))
        finally:
            await answer.body.aclose()

    async def first_answer(self, stretch: Stretch) -> Answer:
        attempts = Attempts(self)
        while True:
            try:
                return await self.open(stretch)
            except (HttpError, Passing) as error:
                attempts.failure = error
            await attempts.wait()

    async def together(self, first: Stretch, answer: Answer, pieces: Iterator[Extent]) -> None:
        """Fetch the pieces in tasks, which have ended when this returns or raises.

        A task that fails cancels the others itself, and the group does not know. In CPython 3.11
        and 3.12, a group that sees a task fail leaves the task around it one cancellation more.
        """
        tasks: list[asyncio.Task[None]] = []
        failures: list[Exception] = []

        async def work(stretch: Stretch, answer: Answer | None = None) -> None:
            try:
                await self.fetch_stretch(stretch, answer)
                for extent in pieces:
                    await self.fetch_stretch(Stretch(*extent, is_piece=True))
            except Exception as error:
                failures.append(error)
                for task in tasks:
                    task.cancel()

        self.is_together = True
        try:
            async with asyncio.TaskGroup() as group:
                tasks.append(group.create_task(work(first, answer)))
                for extent in islice(pieces, self.parallel - 1):
                    stretch = Stretch(*extent, is_piece=True)
                    tasks.append(group.create_task(work(stretch)))
        finally:
            self.is_together = False
        if failures:
            # A variable would make the exception refer to itself by way of this frame.
            raise failures.pop(0)
        if any(task.cancelled() for task in tasks):
            # Somebody else than we: not all is there.
            raise asyncio.CancelledError

    async def fetch_stretch(self, stretch: Stretch, answer: Answer | None = None) -> None:
        """Make requests until the stretch is there."""
        attempts = Attempts(self)
        while True:
            try:
                if answer is None:
                    answer = await self.open(stretch)
                await self.take(answer, stretch)
                if stretch.position == stretch.stop:
                    return
            except (HttpError, Passing) as error:
                if self.is_telling:
                    raise
                attempts.failure = error
            if (answer is not None and stretch.position > answer.start
                    and self.part.can_resume):
                # That is progress. The same first bytes, again and again, would be none.
                attempts.begin_anew()
            answer = None
            if attempts.failure is not None:
                if not self.part.can_resume:
                    self.part.forget()
                if stretch.stop is None or not self.part.can_resume:
                    stretch = self.part.rest()
                await attempts.wait()

    # -- one response

    async def open(self, stretch: Stretch) -> Answer:
        """Ask for a stretch, and decide what comes.

        It may be the whole file from its first byte, whatever was asked for. Then the stretch is
        that from now on.
        """
        try:
            code, headers, body = await self.ask(headers=self.fields(stretch))
        except HttpError as error:
            self.was_sent = self.was_sent or not isinstance(error, HttpConnectionError)
            raise
        try:
            self.was_sent, self.last_headers = True, headers
            return self.answered(stretch, code, headers, body) or await self.refuse(
                code, headers, body)
        except BaseException:
            await body.aclose()
            raise

    def fields(self, stretch: Stretch) -> Fields:
        fields = (*self.headers, (b'accept-encoding', b'identity'))
        if not stretch.is_range:
            return fields
        last = b'%d' % (stretch.stop - 1) if stretch.is_piece and stretch.stop else b''
        fields += ((b'range', b'bytes=%d-%b' % (stretch.position, last)),)
        version = self.part.version
        if version is not None:
            fields += ((b'if-range', version.validator.encode('latin-1')),)
        return fields

    def answered(self, stretch: Stretch, code: bytes, headers: Fields, body: Any) -> Answer | None:
        """What a response brings of the file, or None if it brings nothing of it."""
        # Some servers send a range with 200.
        has_range = any(name == b'content-range' for name, _ in headers)
        if stretch.is_range and (code == b'206' or code == b'200' and has_range):
            return self.range_of(stretch, headers, body)
        if code == b'200' and not has_range:
            return self.whole_of(stretch, headers, body)
        if stretch.is_range and code in (b'412', b'416'):
            return self.end_of(stretch, code, headers, body)
        return None

    def whole_of(self, stretch: Stretch, headers: Fields, body: Any) -> Answer:
        if self.is_together:
            raise Changed('the whole file came in place of a piece of it')
        if codings := codings_of(headers):
            raise DownloadError(f'{self.where()} expected content without a coding, got '
                                f'content-encoding: {codings}')
        part = self.part
        if part.done:
            self.count_restart(Changed('the whole file came in place of the rest'))
        version = Version.of(headers, length_of(headers))
        part.begin(version)
        stretch.position, stretch.stop, stretch.is_piece = 0, version.total, False
        return Answer(0, version.total, False, headers, body)

    def range_of(self, stretch: Stretch, headers: Fields, body: Any) -> Answer:
        """A range that begins where it was asked to, of the version that is there."""
        part = self.part
        first, stop, total = content_range(headers)
        if first != stretch.position or stretch.is_piece and stop > (stretch.stop or 0):
            raise Unusable(f'a range from byte {stretch.position} was asked for, and the server '
                           f'sent bytes {first} to {stop - 1}')
        if codings := codings_of(headers):
            raise Unusable(f'the range has content-encoding: {codings}')
        if length_of(headers) not in (None, stop - first):
            raise Unusable(f'a range of {stop - first} bytes came with {length_of(headers)}')
        version = Version.of(headers, total)
        if not version.validator:
            raise Unusable('the range has no strong validator')
        if part.version is None:
            part.begin(version)
        else:
            part.version = part.version.joined(version)
            part.is_pieced = True
        stretch.stop = min(stretch.stop, total) if stretch.is_piece and stretch.stop else total
        part.go_on_at(first)
        return Answer(first, stop, True, headers, body)

    def end_of(self, stretch: Stretch, code: bytes, headers: Fields, body: Any) -> Answer:
        """After a range that is refused: nothing more, if it is certain that all is there."""
        match = UNSATISFIED.fullmatch(value_of(headers, b'content-range'))
        version, size = self.part.version, self.part.done
        if (code == b'416' and match is not None and int(match[1]) == size
                and not stretch.is_piece and version is not None
                and Version.of(headers, None).validator == version.validator):
            stretch.position = stretch.stop = size
            return Answer(size, size, True, (), body)
        raise Unusable(f'the server answered {code.decode()} to a range from byte '
                       f'{stretch.position}')

    async def refuse(self, code: bytes, headers: Fields, body: Any) -> NoReturn:
        """Raise what a response means that brings nothing of the file."""
        content = await beginning(body)
        text = f'the server answered {code.decode()}'
        if code.startswith(b'5') or code in (b'408', b'429'):
            seconds = max(0, retry_after(headers))
            if seconds <= self.options.max_retry_after:
                raise Passing(f'{text}: {content[:200]!r}', seconds)
            text += f', and wants {seconds:g} seconds to pass'
        elif code in REDIRECTS:
            text += ', and redirects are only followed with lowhaio-redirect around the request'
        elif code in (b'200', b'206'):
            text += ' with a range that was not asked for'
        raise DownloadStatusError(f'{self.where()} {text}: {content[:200]!r}', code, headers,
                                  content)

    async def take(self, answer: Answer, stretch: Stretch) -> None:
        """Write the content of a response to its place, and see whether it is all."""
        stretch.position = start = answer.start
        try:
            if answer.stop != start:
                await self.receive(answer, stretch)
            if answer.stop is None:
                stretch.stop = stretch.position
            elif stretch.position < answer.stop:
                raise Passing(f'{answer.stop - stretch.position} bytes of the '
                              f'{answer.stop - start} of a response are missing')
            await self.check_content(answer, stretch.position)
        except WrongContent:
            self.part.take_back(start, stretch.position)
            stretch.position = start
            raise
        finally:
            try:
                self.part.add(start, stretch.position)
            finally:
                await answer.body.aclose()

    async def receive(self, answer: Answer, stretch: Stretch) -> None:
        part, stop, on_progress = self.part, answer.stop, self.options.on_progress
        total = part.version.total if part.version is not None else None
        async for chunk in answer.body:
            end = stretch.position + len(chunk)
            if stop is not None and end > stop:
                raise Unusable(f'more came than the {stop - answer.start} bytes of a response')
            part.write(chunk, stretch.position)
            stretch.position = end
            self.is_telling = True
            on_progress(part.done, total)
            self.is_telling = False
            if part.unsynced >= SYNC_SIZE and self.options.fsync:
                if not part.is_sparse:
                    part.add(answer.start, end)
                await part.sync()

    # -- digests (RFC 9530)

    async def check_content(self, answer: Answer, stop: int) -> None:
        """See to the digests of a response that has come to its end.

        They may be in its trailers. That of its content is of these bytes only. That of the
        representation is of the whole file, and is kept until the end.
        """
        part = self.part
        fields = (*answer.headers, *getattr(answer.body, 'trailers', ()))
        assert part.version is not None
        of_file = digests_of(fields, b'repr-digest')
        part.version = part.version.joined(part.version._replace(digests=of_file))
        of_content = digests_of(fields, b'content-digest')
        if text := difference(of_content, await hashed(
                part.part_path, answer.start, stop, of_content)):
            raise WrongContent(f'content-digest is {text}')

    async def verify(self) -> tuple[str, ...]:
        """The names of the digests that the file has. Raises if it has not all."""
        part = self.part
        assert part.version is not None
        of_server, of_caller = part.version.digests, self.options.digest
        found = await hashed(part.part_path, 0, part.done, {**of_server, **of_caller})
        for wanted, who in ((of_server, 'server'), (of_caller, 'caller')):
            if text := difference(wanted, found):
                self.begin_anew_or_raise(f'the digest of the {who} is {text}')
        return tuple(sorted(found))

    def begin_anew_or_raise(self, text: str) -> NoReturn:
        """If all came with one response, it would be the same again. What an earlier run had left
        may be something else than what the server has, so that is tried, once."""
        if self.part.is_pieced and not self.was_wrong:
            self.was_wrong = True
            raise Changed(text)
        self.part.forget()
        raise DownloadDigestError(f'{self.where()} {text}')


class Attempts:
    """The attempts that have failed, one after the other, since bytes came last."""

    __slots__ = ('job', 'pauses', 'count', 'failure')

    def __init__(self, job: Job) -> None:
        self.job = job
        # How the last attempt ended, until it is waited for. Here, and not in a variable of the
        # frame that the exception refers to.
        self.failure: Exception | None = None
        self.begin_anew()

    def __repr__(self) -> str:
        return f'<Attempts count={self.count}>'

    def begin_anew(self) -> None:
        self.pauses = iter(self.job.options.pauses)
        self.count = 0

    async def wait(self) -> None:
        """Let the pause pass that follows the failure, or raise what ends the download."""
        error, self.failure = self.failure, None
        assert error is not None
        self.count += 1
        seconds = next(self.pauses, None)
        try:
            if isinstance(error, HttpError) and is_lasting(error):
                if self.job.was_sent and isinstance(error, HttpConnectionError):
                    raise not_the_first(error) from error
                raise error
            if seconds is None:
                raise self.last_error(error) from error
            options = self.job.options
            seconds = max(seconds * uniform(1, 1 + options.jitter), getattr(error, 'seconds', 0))
            options.on_retry(self.count, seconds, error)
        finally:
            error = None
        await sleep(seconds)

    def last_error(self, error: Exception) -> DownloadError:
        kind = DownloadDigestError if isinstance(error, WrongContent) else DownloadError
        return kind(f'{self.job.where()} the last attempts, {self.count}, failed, and '
                    f'{self.job.part.done} bytes are there: {error}')


def not_the_first(error: HttpConnectionError) -> HttpDataError:
    """Whoever retries must know that a server has received an earlier request."""
    raised = HttpDataError(f'asking again: {error}')
    raised.reused, raised.phase, raised.response_started = error.reused, error.phase, True
    return raised


# ---------------------------------------------------------------------------- the file on the disk
#
# The problem: at any moment the process may be killed, or the power may fail, and the next run has
# to know which bytes of the part are those of which version.
#
# `path.part` has the content. `path.part-state` has lines of JSON. The first one tells the
# version:
#
#     {"resource": …, "validator": …, "total": …, "digests": …, "sparse": …, "boot": …}
#
# A plain part has been written from its first byte on, so its length tells how much is there. A
# sparse one has its final length, and the lines that follow tell what is there: `[start, stop]`.
# What is written to the part is written before the line about it, and the state is emptied before
# the bytes of another version are written. So whenever the process is killed, the state claims too
# little at worst.
#
# When the system itself dies, what was written last may be lost, in any order. So there are lines
# `{"synced": [[start, stop], …]}`, written when these bytes are on the disk. The id of the boot is
# in the first line. After another boot, only what was synced counts.

class Version(NamedTuple):
    """What tells one version of a file from another one.

    `validator` is what `if-range` may have, and empty if there is nothing of that kind.
    """

    validator: str
    total: int | None
    digests: dict[str, bytes]

    @classmethod
    def of(cls, headers: Fields, total: int | None) -> Version:
        return cls(validator_of(headers), total, digests_of(headers, b'repr-digest'))

    def joined(self, other: Version) -> Version:
        """What is known of both. Raises Changed if they are not the same."""
        if self.validator != other.validator:
            raise Changed(f'the validator was {self.validator}, and is {other.validator}')
        if None not in (self.total, other.total) and self.total != other.total:
            raise Changed(f'the file had {self.total} bytes, and has {other.total}')
        digests = {**self.digests, **other.digests}
        if digests != {**other.digests, **self.digests}:
            raise Changed('the file has another repr-digest than before')
        return Version(self.validator, self.total if other.total is None else other.total, digests)


class Part:
    """What is there of a file, and what it is a part of. Holds the lock of the part."""

    __slots__ = ('path', 'part_path', 'state_path', 'resource', 'keeps', 'descriptor', 'state',
                 'version', 'extents', 'is_sparse', 'done', 'unsynced', 'resumed_from',
                 'is_pieced', 'is_finished')

    def __init__(self, path: Path, resource: str, keeps: bool) -> None:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if path.exists() and not path.is_file() and not path.is_symlink():
            # Such as /dev/null, which root could replace.
            raise DownloadError(f'{path} is there, and it is no file')
        # The current folder of the process may be another one before the end.
        self.path = path = path.absolute()
        self.part_path = f'{path}.part'
        self.state_path = f'{path}.part-state'
        self.resource = resource
        self.keeps = keeps
        self.version: Version | None = None
        # What has been written, in order and without gaps that touch.
        self.extents: list[Extent] = []
        self.is_sparse = False
        # How many bytes have been written, and how many since the disk was waited for.
        self.done = self.unsynced = 0
        self.resumed_from = 0
        # Whether what is there came with more than one response.
        self.is_pieced = False
        self.is_finished = False
        with contextlib.ExitStack() as undo:
            self.descriptor = locked(self.part_path)
            undo.callback(os.close, self.descriptor)
            undo.callback(self.remove_if_empty)
            self.state = os.open(self.state_path, FLAGS | os.O_APPEND, 0o666)
            undo.callback(os.close, self.state)
            self.load()
            undo.pop_all()

    def remove_if_empty(self) -> None:
        if not os.fstat(self.descriptor).st_size:
            os.unlink(self.part_path)

    def __repr__(self) -> str:
        return f'<Part {self.path} {self.done} bytes sparse={self.is_sparse}>'

    @property
    def can_resume(self) -> bool:
        return self.version is not None and self.version.validator != ''

    # -- what an earlier run has left

    def load(self) -> None:
        size = os.fstat(self.descriptor).st_size
        data = os.pread(self.state, os.fstat(self.state).st_size, 0)
        try:
            version, self.is_sparse, extents, is_as_written = parse_state(
                data, self.resource, size)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self.forget()
            return
        for extent in extents:
            self.extents = with_extent(self.extents, extent)
        self.version = version
        self.is_pieced = True
        self.done = sum(stop - start for start, stop in self.extents)
        if not is_as_written:
            self.rewrite()
        self.resumed_from = self.done

    def forget(self) -> None:
        """Begin with nothing. The state goes first, since without it nobody uses the part."""
        os.ftruncate(self.state, 0)
        os.ftruncate(self.descriptor, 0)
        self.version = None
        self.extents = []
        self.done = self.unsynced = self.resumed_from = 0
        self.is_sparse = self.is_pieced = False

    def begin(self, version: Version) -> None:
        self.forget()
        self.version = version
        self.rewrite()

    def rewrite(self) -> None:
        """Make both files say what is in memory."""
        assert self.version is not None
        self.done = sum(stop - start for start, stop in self.extents)
        os.ftruncate(self.state, 0)
        total = (self.version.total or 0) if self.is_sparse else self.done
        os.ftruncate(self.descriptor, total)
        self.note({
            'resource': self.resource, 'validator': self.version.validator,
            'total': self.version.total, 'sparse': self.is_sparse, 'boot': boot_id(),
            'digests': {name: value.hex() for name, value in self.version.digests.items()}},
            *(self.extents if self.is_sparse else ()))

    def note(self, *lines: Any) -> None:
        """Add lines to the state. If one is cut off, it does not count."""
        if self.can_resume:
            write_all(self.state, ''.join(f'{json.dumps(line)}\n' for line in lines).encode())

    def make_plain(self) -> None:
        """Keep what is there from the first byte on."""
        if self.is_sparse:
            self.extents = self.extents[:1] if self.extents and not self.extents[0][0] else []
            self.is_sparse = False
            self.rewrite()
            self.resumed_from = min(self.resumed_from, self.done)

    def make_sparse(self) -> None:
        if not self.is_sparse:
            self.is_sparse = True
            self.rewrite()

    # -- what is missing

    def rest(self) -> Stretch:
        """What follows in a plain part.

        If it may be whole, the last byte is asked for again. Then the range is a valid one, and
        its response tells the version.
        """
        if self.version is None or not self.done:
            return Stretch(0, None)
        total = self.version.total
        position = self.done if total is not None and self.done < total else self.done - 1
        return Stretch(position, total)

    def missing(self, size: int) -> Iterator[Extent]:
        """The pieces that are missing now, of so many bytes at most.

        Without a version that is the first one. If the length is not known, there is none. They
        are in no list, since a server may claim any length.
        """
        if self.version is None:
            return iter([(0, size)])
        total = self.version.total or 0
        ends = [0, *(stop for _, stop in self.extents)]
        starts = [*(start for start, _ in self.extents), total]
        return ((start, min(start + size, stop)) for begin, stop in zip(ends, starts, strict=True)
                for start in range(begin, stop, size))

    # -- writing

    def write(self, chunk: bytes, position: int) -> None:
        write_all(self.descriptor, chunk, position)
        self.done += len(chunk)
        self.unsynced += len(chunk)

    def go_on_at(self, position: int) -> None:
        """In a plain part, the last byte may come once more."""
        if not self.is_sparse:
            self.done = position

    def take_back(self, start: int, stop: int) -> None:
        """Drop what was just written."""
        self.done -= stop - start
        if not self.is_sparse:
            os.ftruncate(self.descriptor, start)
            self.extents = [(0, start)] if start else []
            # What follows has other bytes than those that may have been synced.
            self.note({'synced': []})

    def add(self, start: int, stop: int) -> None:
        """What was written since `start` is there."""
        if start < stop:
            self.extents = with_extent(self.extents, (start, stop))
            if self.is_sparse:
                self.note((start, stop))

    async def sync(self) -> None:
        """Wait until the disk has all that was added."""
        self.unsynced = 0
        extents = self.extents
        await asyncio.to_thread(sync, self.part_path)
        self.note({'synced': extents})

    async def finish(self, fsync: bool) -> None:
        """Give the part its name."""
        if fsync:
            await asyncio.to_thread(sync, self.part_path)
        os.replace(self.part_path, self.path)
        self.is_finished = True
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.state_path)
        if fsync:
            # The name is in the folder.
            await asyncio.to_thread(sync, self.path.parent)

    def close(self) -> None:
        """Let go of both files. What no later run could use is removed."""
        try:
            if not self.is_finished and not (self.keeps and self.can_resume and self.done):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.state_path)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.part_path)
        finally:
            os.close(self.state)
            os.close(self.descriptor)


# A link is not followed, since somebody else may have made it where others may write, as in /tmp.
FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


def locked(path: str) -> int:
    """A descriptor of the file, which no other download has.

    The lock is of the file and not of its name. Whoever had it before may have given the file its
    final name meanwhile, and then this one must not write to it.
    """
    while True:
        descriptor = os.open(path, FLAGS, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise DownloadError(f'{path} is there, and it is no file')
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_at(path, descriptor):
                return descriptor
        except BlockingIOError as cause:
            os.close(descriptor)
            raise DownloadBusyError(
                f'{path} is locked: another download writes to it') from cause
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def is_at(path: str, descriptor: int) -> bool:
    """Whether the open file still has this path."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def write_all(descriptor: int, data: bytes, position: int | None = None) -> None:
    """Write the data there, or at the end. A disk may take less than all, and then tell why it
    takes no more."""
    written = 0
    while written < len(data):
        rest = memoryview(data)[written:] if written else data
        written += (os.write(descriptor, rest) if position is None
                    else os.pwrite(descriptor, rest, position + written))


def sync(path: str | os.PathLike[str]) -> None:
    """In a thread. With a descriptor of its own, since the caller may be cancelled meanwhile."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def hashed(path: str, start: int, stop: int, wanted: dict[str, bytes]) -> dict[str, bytes]:
    """The digests of these bytes, by the same algorithms."""
    if not wanted:
        return {}
    hashes = {name: hashlib.new(name) for name in wanted}
    is_over: list[bool] = []
    try:
        await asyncio.to_thread(hash_bytes, path, start, stop, [*hashes.values()], is_over)
    finally:
        # A thread can not be cancelled.
        is_over.append(True)
    return {name: each.digest() for name, each in hashes.items()}


def hash_bytes(path: str, start: int, stop: int, hashes: list[Any], is_over: list[bool]) -> None:
    buffer = memoryview(bytearray(min(HASH_SIZE, stop - start)))
    with open(path, 'rb', buffering=0) as file:
        file.seek(start)
        while start < stop and not is_over:
            count = file.readinto(buffer[:stop - start])
            for each in hashes:
                each.update(buffer[:count])
            start += count or stop


def with_extent(extents: list[Extent], added: Extent) -> list[Extent]:
    """A new list, in order, where those that touch are one."""
    start, stop = added
    apart = []
    for each in extents:
        if each[1] < start or stop < each[0]:
            apart.append(each)
        else:
            start, stop = min(start, each[0]), max(stop, each[1])
    return sorted([*apart, (start, stop)])


def boot_id() -> str:
    """Empty where the system does not tell."""
    try:
        return Path(BOOT_ID).read_text(encoding='ascii').strip()
    except OSError:
        return ''


BOOT_ID = '/proc/sys/kernel/random/boot_id'


def parse_state(data: bytes, resource: str, size: int,
                ) -> tuple[Version, bool, list[Extent], bool]:
    """The version of a part of so many bytes, whether it is sparse, what is there of it, and
    whether all that was written is there.

    Raises a ValueError, KeyError, TypeError, AttributeError or RecursionError if that can not be
    told.
    """
    # What follows the last line end was cut off.
    first, *lines = (json.loads(line) for line in data.split(b'\n')[:-1])
    version = Version(first['validator'], first['total'], {
        name: bytes.fromhex(value) for name, value in first['digests'].items()})
    is_sparse, total = first['sparse'], version.total
    if first['resource'] != resource or not VALIDATOR.fullmatch(version.validator) or (
            total is None and is_sparse or total is not None and type(total) is not int) or (
            not version.digests.keys() <= set(ALGORITHMS.values())):
        raise ValueError('it is a part of something else')
    extents: list[Any] = [line for line in lines if isinstance(line, list)]
    is_same_boot = first['boot'] == boot_id()
    if not is_same_boot:
        extents = [line['synced'] for line in lines if isinstance(line, dict)][-1:]
        extents = extents[0] if extents else []
    elif not is_sparse:
        extents = [(0, size)]
    return version, is_sparse, [
        (start, min(stop, size)) for start, stop in extents if 0 <= start < min(stop, size)
    ], is_same_boot and data.endswith(b'\n')


# ----------------------------------------------------------------------------- what fields say

ENTITY_TAG = re.compile(rb'"[\x21\x23-\x7e\x80-\xff]*"')
# A strong entity tag or a date.
VALIDATOR = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"|[A-Za-z0-9 ,:-]+')
RANGE = re.compile(rb'bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})', re.IGNORECASE)
UNSATISFIED = re.compile(rb'bytes \*/([0-9]{1,18})', re.IGNORECASE)
LENGTH = re.compile(rb'[0-9]{1,18}')


def value_of(headers: Fields, wanted: bytes) -> bytes:
    """The value of a field, which is empty if there is none, or if there are different ones."""
    values = {value for name, value in headers if name == wanted}
    return values.pop() if len(values) == 1 else b''


def length_of(headers: Fields) -> int | None:
    """None if the length is not told. It is not if the content is chunked (RFC 9112 6.3)."""
    value = value_of(headers, b'content-length')
    if any(name == b'transfer-encoding' for name, _ in headers) or not LENGTH.fullmatch(value):
        return None
    return int(value)


def codings_of(headers: Fields) -> str:
    values = b', '.join(value for name, value in headers if name == b'content-encoding')
    return '' if values.strip().lower() in (b'', b'identity') else values.decode('latin-1')


def content_range(headers: Fields) -> tuple[int, int, int]:
    """The first byte, the one behind the last, and the total (RFC 9110 14.4)."""
    value = value_of(headers, b'content-range')
    match = RANGE.fullmatch(value)
    if match is None:
        # Such as several ranges in one body, or a length that the server does not know.
        content_type = value_of(headers, b'content-type')
        raise Unusable(f'expected one range of a known length, got content-range: {value!r} and '
                       f'content-type: {content_type!r}')
    first, last, total = map(int, match.groups())
    if not first <= last < total:
        raise Unusable(f'content-range: {value!r} is no range')
    return first, last + 1, total


def validator_of(headers: Fields) -> str:
    """What `if-range` may have of a response, or '' (RFC 9110 13.1.5).

    That is a strong entity tag. Only if there is no tag at all, not even a weak one, it is a date
    which is that of a strong validator (8.8.2.2).
    """
    if any(name == b'etag' for name, _ in headers):
        tag = value_of(headers, b'etag')
        return tag.decode('latin-1') if ENTITY_TAG.fullmatch(tag) else ''
    value = value_of(headers, b'last-modified')
    modified, sent = parse_date(value), parse_date(value_of(headers, b'date'))
    if modified is None or sent is None or sent - modified < MIN_AGE:
        return ''
    text = value.decode('latin-1')
    return text if VALIDATOR.fullmatch(text) else ''


def parse_date(value: bytes) -> float | None:
    """In seconds since 1970, or None if it is no date."""
    try:
        return parsedate_to_datetime(value.decode('ascii')).timestamp()
    except (ValueError, OverflowError):
        return None


# A dictionary of structured fields (RFC 9651 3.2). Only byte sequences are digests. All else has
# to be recognised, so that what follows it can be read. A field with an error anywhere does not
# count.

KEY = r'[a-z*][a-z0-9_\-.*]*'
BYTES = r':[A-Za-z0-9+/=]*:'
ITEM = '(?:' + '|'.join((
    BYTES,
    r'@?-?[0-9]{1,15}(?:\.[0-9]{1,3})?',
    r'"(?:[ !#-\[\]-~]|\\["\\])*"',
    r'%"(?:[ !#$&-~]|%[0-9a-f]{2})*"',
    r'[A-Za-z*][!#$%&\'*+\-.^_`|~0-9A-Za-z:/]*',
    r'\?[01]',
)) + ')'
PARAMETERS = f'(?:; *{KEY}(?:={ITEM})?)*'
INNER_LIST = rf'\( *(?:{ITEM}{PARAMETERS}(?: +{ITEM}{PARAMETERS})* *)?\)'
MEMBER = re.compile(
    rf'({KEY})(?:=(?:({BYTES})|{ITEM}|{INNER_LIST}))?{PARAMETERS}(?:[ \t]*(,)[ \t]*|$)')


def digests_of(headers: Fields, wanted: bytes) -> dict[str, bytes]:
    """The digests of `content-digest` or `repr-digest` that can be checked, by hashlib's names."""
    text = b', '.join(value for name, value in headers if name == wanted).decode('latin-1')
    text, position, digests = text.strip(' '), 0, {}
    is_more = ','
    while is_more and text:
        match = MEMBER.match(text, position)
        if match is None:
            return {}
        name, value, is_more = match.groups()
        position = match.end()
        # The last one of a name counts.
        digests[name] = value
    try:
        return {ALGORITHMS[name]: decoded(value) for name, value in digests.items()
                if name in ALGORITHMS and value is not None}
    except ValueError:
        return {}


def decoded(value: str) -> bytes:
    """A byte sequence. Its padding may be missing (RFC 9651 4.2.7)."""
    data = value.strip(':').rstrip('=')
    return base64.b64decode(data + '=' * (-len(data) % 4), validate=True)


def difference(wanted: dict[str, bytes], found: dict[str, bytes]) -> str:
    """How the digests differ, or '' if they do not."""
    return ', '.join(f'{name} {value.hex()}, but what came has {found[name].hex()}'
                     for name, value in wanted.items() if value != found[name])


async def beginning(body: Any) -> bytes:
    """The first bytes of a body. Some more are read, so that its connection can be used again."""
    told, left = b'', MAX_DRAINED
    try:
        with contextlib.suppress(HttpError, TimeoutError):
            async with asyncio.timeout(DRAIN_TIMEOUT):
                async for chunk in body:
                    told += chunk[:MAX_TOLD - len(told)]
                    left -= len(chunk) + 1024
                    if left < 0:
                        break
    finally:
        await body.aclose()
    return told


def origin_of(url: str) -> str:
    """The part of a URL that may be shown: no path, no query and no userinfo."""
    match = re.match(r'([^:/?#]+://)(?:[^/?#]*@)?([^/?#]*)', url)
    return ''.join(match.groups()) if match is not None else ''
