"""Objects in S3, for lowhaio: they are read, written, listed, copied and deleted.

::

    request, close = Pool()
    bucket = Bucket(request, 'my-bucket', credentials, 'eu-west-2')
    await bucket.put('my key', b'The content')
    async for chunk in await bucket.get('my key'):
        print(chunk)

This layer knows S3: its keys, errors, multipart uploads, pages and checksums. Its requests are
made by the `request` that it is given, signed by lowhaio_aws_sigv4, and made again by
lowhaio_retry. The module reads from the top down:

    Bucket      the operations on objects
    Content     what is read of an object: it goes on where a connection broke off, and is checked
    arrival     the parts of an object that is read: to a file, or in order to a function
    sources     what is written to an object: bytes in memory, a file, or a stream
    Upload      the parts of an object that is written
    answers     one request: what S3 says is wrong becomes an error
"""

from __future__ import annotations

import asyncio
import builtins
import fcntl
import logging
import os
import re
import secrets
import stat
from asyncio import sleep
from base64 import b64encode
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import aclosing, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from hashlib import md5, sha256
from http import HTTPStatus
from inspect import isawaitable
from itertools import islice
from pathlib import Path
from random import uniform
from types import TracebackType
from typing import IO, Any, NamedTuple, NoReturn, Protocol
from urllib.parse import quote, unquote_plus
from xml.etree import ElementTree
from xml.parsers import expat

from lowhaio import (
    Fields,
    Headers,
    HttpConnectionError,
    HttpDataError,
    HttpError,
    Phase,
    streamed,
)
from lowhaio_aws_sigv4 import Credentials, presigned, signed
from lowhaio_aws_sigv4_streaming import Check, ChecksumError, check_of
from lowhaio_aws_sigv4_streaming import checksum as new_checksum
from lowhaio_retry import always, retry

__all__ = ['Bucket', 'ChecksumError', 'Content', 'ListedObject', 'ObjectInfo', 'Page', 'S3Busy',
           'S3CredentialsRefused', 'S3DeleteError', 'S3Error', 'S3NotFound', 'S3NotModified',
           'S3PreconditionFailed', 'Written']

LOGGER = logging.getLogger('lowhaio_s3')

MIB = 2 ** 20

# Of a part of an object, in bytes. S3 takes no smaller one than 5 MiB, but for the last.
PART_SIZE = 8 * MIB
MIN_PART_SIZE = 5 * MIB
# Of what is held in memory: of an upload that is a stream, and of a download that is passed on in
# order. With 2 parts and 4 they keep the whole process below 40 MiB.
STREAM_PART_SIZE = MIN_PART_SIZE
STREAM_PARALLEL = 2
ORDERED_PART_SIZE = 2 * MIB
PARALLEL = 4

# https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
MAX_PARTS = 10_000
MAX_COPY = 5 * 2 ** 30
COPY_PART_SIZE = 512 * MIB
MAX_DELETED = 1000
# A stream has no length. Its parts double each time that so many have been sent, so that 10,000 of
# them hold 5 TB.
PARTS_OF_ONE_SIZE = 1000

# How many bytes of a file are read, and sent, at once.
READ_SIZE = 256 * 1024
# Chunks of a stream that are smaller are joined: an object for each would take as much.
JOINED_SIZE = 4 * 1024
# How many are written to a file at once, and how many chunks that may be: the least that POSIX
# lets `writev` take is 16, and Linux and macOS take 1024.
WRITE_SIZE = 512 * 1024
MAX_HELD_CHUNKS = 512
# How many bytes are hashed before other tasks get a turn. That takes a millisecond or two.
MAX_HASHED = MIB
# How many bytes of XML are read of a response. A page of 1,000 keys has at most 4 MB.
MAX_XML = 16 * MIB
MAX_ERROR = 64 * 1024
# How long the answer may take to a request that makes the server copy content: a completion or a
# copy. Not all servers send spaces meanwhile, as S3 does, and one that is asked again while it is
# at work may say that the parts are gone.
COPYING = {'read': 300}
# How many seconds an upload that has failed is given to be aborted.
ABORT_TIMEOUT = 10

# The seconds to wait before a request is made again. To each of them, up to as much is added.
BUSY_INTERVALS = (0.1, 0.25, 0.5, 1, 2)
CONNECTION_INTERVALS = (0, 0.25, 0.5, 1)
DATA_INTERVALS = (0, 0.25, 0.5, 1)
# The same for the rest of an object, since the last byte that came.
RESUME_INTERVALS = (0, 0.25, 0.5, 1)
JITTER = 1.0

Chunks = AsyncIterable[bytes]
Data = bytes | bytearray | memoryview | Path | Chunks | Callable[[], AsyncIterator[bytes]]
Write = Callable[[bytes], object]
Target = str | os.PathLike[str] | IO[bytes] | Write
OnProgress = Callable[[int], object]
Pairs = Iterable[tuple[str, str]]
Params = tuple[tuple[str, str], ...]


Response = tuple[bytes, Fields, Any]
Request = Callable[..., Awaitable[Response]]
Deletion = Callable[[], Awaitable[list[tuple[str, 'S3Error']]]]


# -------------------------------------------------------------------------------- the errors

class S3Error(Exception):
    """What S3 says is wrong.

    - `status`: the status code, such as `b'403'`.
    - `code`, `message`: S3's own, such as `'AccessDenied'`. The response to a HEAD has neither.
      Then the code is the reason phrase of the status, such as `'Forbidden'`.
    - `request_id`, `host_id`: what AWS's support asks for, or `''`.
    - `bucket`, `key`: what the request was about. The key is `''` if it was the bucket.
    - `headers`: the fields of the response.
    """

    def __init__(self, text: str, *, status: bytes = b'', code: str = '', message: str = '',
                 request_id: str = '', host_id: str = '', bucket: str = '', key: str = '',
                 headers: Fields = ()) -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.message = message
        self.request_id = request_id
        self.host_id = host_id
        self.bucket = bucket
        self.key = key
        self.headers = headers
        # For lowhaio_retry: the seconds that the server wants us to wait, and whether the same
        # request would fail once more.
        self.retry_after = 0.0
        self.is_lasting = False


class S3NotFound(S3Error):
    """There is no such object, bucket, version or upload."""


class S3NotModified(S3Error):
    """The object has not changed, so that its content was not sent: `if_none_match`."""


class S3PreconditionFailed(S3Error):
    """The object is not, or is, what `if_match` or `if_none_match` said."""


class S3Busy(S3Error):
    """S3 could not do it now. It was tried again, in vain."""


class S3CredentialsRefused(S3Error):
    """The credentials have expired, or are not known (any more)."""


class S3DeleteError(S3Error):
    """Some of many objects were not deleted. `failed` has pairs of a key and its `S3Error`."""

    failed: tuple[tuple[str, S3Error], ...] = ()


# ------------------------------------------------------------------------ what is told of objects

class ObjectInfo:
    """What the fields of a response tell of an object. They are read when they are asked for."""

    __slots__ = ('key', 'headers', '_fields')

    def __init__(self, key: str, headers: Fields) -> None:
        self.key = key
        self.headers = headers
        self._fields = dict(headers)

    def __repr__(self) -> str:
        return f'<ObjectInfo size={self.size} etag={self.etag!r}>'

    def field(self, name: bytes) -> str:
        """The value of a field, or `''`."""
        return self._fields.get(name, b'').decode('latin-1')

    @property
    def size(self) -> int | None:
        """The bytes of the whole object, also if a range was asked for. None if not known."""
        if (content_range := self.content_range) is not None:
            return content_range[2]
        length = self.field(b'content-length')
        return int(length) if DIGITS.fullmatch(length) else None

    @property
    def content_range(self) -> tuple[int, int, int | None] | None:
        """Start, stop and size of the object, as `content-range` has them."""
        match = CONTENT_RANGE.fullmatch(self.field(b'content-range'))
        if match is None:
            return None
        first, last, size = match.groups()
        return int(first), int(last) + 1, None if size == '*' else int(size)

    @property
    def etag(self) -> str:
        """With its quotation marks, as `if_match` takes it."""
        return self.field(b'etag')

    @property
    def modified(self) -> datetime | None:
        """In UTC, to the second."""
        try:
            return parsedate_to_datetime(self.field(b'last-modified')).astimezone(UTC)
        except (ValueError, OverflowError):
            return None

    @property
    def content_type(self) -> str:
        return self.field(b'content-type')

    @property
    def version(self) -> str:
        """The version, or `''` where the bucket keeps none."""
        return self.field(b'x-amz-version-id')

    @property
    def metadata(self) -> dict[str, str]:
        """The user's own metadata, by names in lower case."""
        return {name[11:].decode('latin-1'): value.decode('latin-1')
                for name, value in self.headers if name.startswith(b'x-amz-meta-')}


DIGITS = re.compile('[0-9]{1,19}')
CONTENT_RANGE = re.compile(r'bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)')


class Written(NamedTuple):
    """What S3 tells of an object that has been written."""

    key: str
    etag: str
    version: str
    # How many parts it was sent in. 0 says that it was no multipart upload.
    parts: int
    headers: Fields


class ListedObject(NamedTuple):
    key: str
    size: int
    etag: str
    last_modified: str
    storage_class: str

    @property
    def modified(self) -> datetime:
        """In UTC."""
        return datetime.fromisoformat(self.last_modified)


class Page(NamedTuple):
    """Some of the objects of a listing, and of the common prefixes if it has a delimiter."""

    objects: tuple[ListedObject, ...]
    prefixes: tuple[str, ...]


# -------------------------------------------------------------------------------- the bucket

class Bucket:
    """The objects of a bucket.

    - `request`: of lowhaio, with or without layers. It is not to sign, retry or decompress.
    - `name`: the bucket's.
    - `credentials`: as of `lowhaio_aws_sigv4.signed`: a coroutine function that returns
      `(access_key_id, secret_access_key, ((name, value), …))`. If it has a method `forget`, that
      is called when S3 says that they have expired or are not known, and the request is made once
      more.
    - `region`: such as `'eu-west-2'`.
    - `endpoint`: the URL of a server of another maker, or of another endpoint of AWS, such as
      `'http://127.0.0.1:9000'`. It may have a path.
    - `path_style`: whether the bucket is named in the path, and not in the host. None stands for
      True with an `endpoint`, and for names with a dot, which a certificate does not cover.
    - `signed_payload`: whether the content that is sent is signed, too. None stands for True
      without TLS. With TLS nobody can change the content on its way.
    - `checksum`: of each object that is written, for S3 to check and keep: `'crc32'`, `'crc32c'`,
      `'crc64nvme'`, `'sha1'` or `'sha256'`. None: none is sent.
    - `parallel`: how many parts of one object are sent, or fetched, at once. None stands for 4,
      and for 2 of a stream that is put, because those are held in memory.
    - `part_size`: of these parts, in bytes, at least 5 MiB. None stands for 8 MiB, and for less
      where parts are held in memory: see `put` and `download`.
    - `on_retry`: as of `lowhaio_retry.retry`.

    A Bucket belongs to the pool of its `request`, and so to one event loop and one process. What
    another process needs are these arguments, and not the object.
    """

    __slots__ = ('name', 'region', 'url', 'parallel', 'part_size', '_credentials', '_is_signed',
                 '_checksum', '_prefix', '_open', '_ask', '_ask_once')

    def __init__(self, request: Request, name: str, credentials: Credentials, region: str, *,
                 endpoint: str | None = None, path_style: bool | None = None,
                 signed_payload: bool | None = None, checksum: str | None = None,
                 parallel: int | None = None, part_size: int | None = None,
                 on_retry: Callable[[int, float, Any], object] | None = None) -> None:
        if checksum is not None:
            new_checksum(checksum)
        self.name = name
        self.region = region
        self.url: str = url_of_bucket(name, region, endpoint, path_style)
        self.parallel: int | None = (
            None if parallel is None else checked_count('parallel', parallel, 1))
        self.part_size: int | None = checked_part_size(part_size)
        self._credentials = credentials
        self._is_signed = (not self.url.startswith('https:') if signed_payload is None
                           else signed_payload)
        self._checksum = checksum
        self._prefix = self.url + '/'
        request = signed(request, credentials, 's3', region,
                         origin='/'.join(self.url.split('/', 3)[:3]))
        forget = getattr(credentials, 'forget', None)
        again = partial(retry, jitter=JITTER, should_retry=always, on_retry=on_retry)
        asking = asked(request, name, forget)
        self._open = again(opened(request, name, forget), INTERVALS)
        self._ask = again(asking, INTERVALS)
        # A write with a condition must not be made again if it may have been carried out: the
        # condition would be about what it has written itself.
        self._ask_once = again(asking, INTERVALS[:-1], should_retry=if_not_made)

    def __repr__(self) -> str:
        return f'<Bucket {self.name!r} at {self.url}>'

    def __reduce__(self) -> NoReturn:
        raise TypeError('a Bucket can not be pickled, because it belongs to the pool of one '
                        'process: pickle its arguments, and make a Bucket of them there')

    # ------------------------------------------------------------------------------ reading

    async def get(self, key: str, *, start: int = 0, stop: int | None = None,
                  version: str | None = None, if_match: str | None = None,
                  if_none_match: str | None = None, headers: Headers = ()) -> Content:
        """The content of an object, which is read as it comes.

        `start` and `stop` are those of a slice: a negative start without a stop is the last bytes.
        Raises `S3NotFound`, and what the conditions ask for: `S3PreconditionFailed` if the object
        has another ETag than `if_match`, and `S3NotModified` if it has that of `if_none_match`.
        """
        is_whole = not start and stop is None
        headers = tuple(headers)
        fields = CHECKSUM_MODE if is_whole else ((b'range', range_field(start, stop)),)
        code, response_headers, body = await self._open(
            b'GET', self._url(key), params=versioned(version), key=key,
            headers=fields + conditions(if_match, if_none_match, headers))
        info = ObjectInfo(key, response_headers)
        try:
            check_etag(info, if_match)
            return Content(info, body, *extent(info, start, stop),
                           check_of(b'GET', code, response_headers),
                           partial(self._more, version, headers))
        except BaseException:
            await body.aclose()
            raise

    async def _more(self, version: str | None, headers: Fields, info: ObjectInfo, start: int,
                    stop: int) -> Content:
        """Other bytes of an object that we have some of, if it is still the same."""
        return await self.get(info.key, start=start, stop=stop, version=info.version or version,
                              if_match=info.etag, headers=without_conditions(headers))

    async def head(self, key: str, *, version: str | None = None, if_match: str | None = None,
                   if_none_match: str | None = None, headers: Headers = ()) -> ObjectInfo:
        """What S3 tells of an object. The errors are those of `get`."""
        _, response_headers, _ = await self._ask(
            b'HEAD', self._url(key), params=versioned(version), key=key,
            headers=conditions(if_match, if_none_match, headers))
        return ObjectInfo(key, response_headers)

    async def download(self, key: str, to: Target, *, parallel: int | None = None,
                       part_size: int | None = None, version: str | None = None,
                       if_match: str | None = None,
                       on_progress: OnProgress | None = None) -> ObjectInfo:
        """Fetch an object, several parts of it at once. All of them are of the same object.

        - `to`: a path, or a binary file with a descriptor, to which each part is written where it
          belongs. A path has the whole object, or what it had before. Otherwise a function that is
          called with the chunks in their order. What it returns is awaited if it can be. Then up
          to `parallel` parts are held in memory, which are smaller by default: 2 MiB.
        - `on_progress`: called with the number of bytes that came, again and again.
        """
        parallel = (self.parallel or PARALLEL if parallel is None
                    else checked_count('parallel', parallel, 1))
        if part_size is None:
            size = self.part_size or (ORDERED_PART_SIZE if callable(to) else PART_SIZE)
        else:
            size = checked_count('part_size', part_size, 1)
        get = partial(self.get, key, version=version, if_match=if_match)
        arrive = partial(arrived, get, size, parallel, on_progress or ignored)
        if isinstance(to, (str, os.PathLike)):
            with replaced(to) as descriptor:
                return await arrive(partial(Places, descriptor))
        if hasattr(to, 'fileno'):
            return await arrive(partial(Places, descriptor_of(to)))
        if callable(to):
            return await arrive(partial(Turns, to))
        raise TypeError('to must be a path, a binary file with a descriptor or a function, got '
                        f'{type(to).__name__}')

    def list(self, prefix: str = '', *, delimiter: str = '', start_after: str = '',
             page_size: int = MAX_DELETED) -> Pages:
        """The objects whose keys begin with the prefix, as an async iterator of pages.

        With a `delimiter`, such as `'/'`, keys that have it after the prefix are not listed. Their
        beginnings, up to it, are in the `prefixes` of a page.
        """
        checked_count('page_size', page_size, 1)
        params = tuple((name, value) for name, value in (
            ('delimiter', delimiter), ('encoding-type', 'url'), ('list-type', '2'),
            ('max-keys', str(page_size)), ('prefix', prefix), ('start-after', start_after))
            if value)
        return Pages(partial(self._ask, b'GET', self.url, key=''), params)

    async def presigned(self, key: str, *, method: bytes = b'GET', expires: int = 3600,
                        params: Params = (), headers: Headers = ()) -> str:
        """A URL with which anybody can make this one request, for `expires` seconds.

        - `params`: such as `(('response-content-type', 'text/plain'),)`.
        - `headers`: the fields that the request must have.
        """
        return await presigned(self._url(key), self._credentials, 's3', self.region,
                               method=method, expires=expires, params=params, headers=headers)

    # ------------------------------------------------------------------------------ writing

    async def put(self, key: str, data: Data, *, size: int | None = None,
                  content_type: str | None = None, metadata: Mapping[str, str] | Pairs = (),
                  if_match: str | None = None, if_none_match: str | None = None,
                  checksum: str | None = None, headers: Headers = (),
                  parallel: int | None = None, part_size: int | None = None,
                  on_progress: OnProgress | None = None) -> Written:
        """Write an object.

        - `data`: bytes, a `Path`, an async iterable of bytes, or a function that returns one.
        - `size`: the bytes of an async iterable, if they are known. If others come, that is a
          `ValueError`, and nothing is written.
        - `if_none_match`: `'*'` lets S3 write only if there is no such object yet, and `if_match`
          only if it has this ETag. Otherwise `S3PreconditionFailed` is raised.
        - `checksum`: that of the Bucket by default.
        - `on_progress`: called with the number of bytes that were passed on, again and again. The
          number is negative if bytes are sent once more.

        An object above two parts, or a stream above one, is sent in parts, `parallel` at once. It
        is there once all have been sent; if one fails, or the task is cancelled, the upload is
        aborted. What is held in memory are the parts of an async iterable. By default there are 2
        of them, of 5 MiB.
        """
        fields = conditions(if_match, if_none_match, headers)
        fields += described(content_type, metadata, fields)
        parallel = None if parallel is None else checked_count('parallel', parallel, 1)
        part_size = checked_part_size(part_size)
        upload = Upload(self, key, fields, checksum or self._checksum, on_progress or ignored)
        source = source_of(data, size)
        try:
            if size not in (None, source.size):
                raise ValueError('size must be the number of bytes of data, '
                                 f'{source.size}, got {size}')
            return await upload.send(source, parallel, part_size)
        finally:
            await source.aclose()

    async def copy(self, source_key: str, key: str, *, source: Bucket | None = None,
                   version: str | None = None, if_match: str | None = None,
                   if_none_match: str | None = None, headers: Headers = ()) -> Written:
        """Let S3 copy an object to this bucket, from another one or from itself.

        Its metadata are copied too, unless `headers` say otherwise. `version` is that of the
        source, and the conditions are about the object that is written. An object above 5 GiB is
        copied in parts.
        """
        bucket = source or self
        origin = quote(f'/{bucket.name}/{checked_key(source_key)}')
        if version is not None:
            origin += f'?versionId={quote(version, "")}'
        fields = conditions(if_match, if_none_match, headers)
        ask = self._ask_once if only_conditions(fields) else self._ask
        try:
            _, response_headers, data = await ask(
                b'PUT', self._url(key), key=key, timeouts=COPYING,
                headers=(*fields, (b'x-amz-copy-source', origin.encode())))
        except S3Error as error:
            if error.code not in TOO_LARGE:
                raise
            info = await bucket.head(source_key, version=version)
            if info.size is None or info.size <= MAX_COPY:
                raise
            kept = () if REPLACE in lowered(fields) else kept_fields(info)
            upload = Upload(self, key, (*kept, *fields), None, ignored)
            return await upload.copy(origin, info.size, info.etag)
        return Written(key, quoted(text_of(parsed(data), 'ETag')), version_of(response_headers), 0,
                       response_headers)

    async def delete(self, key: str, *, version: str | None = None,
                     if_match: str | None = None) -> None:
        """Delete an object. It is no error if there is none."""
        ask = self._ask if if_match is None else self._ask_once
        await ask(b'DELETE', self._url(key), params=versioned(version), key=key,
                  headers=conditions(if_match, None, ()))

    async def delete_many(self, keys: Iterable[str] | AsyncIterable[str]) -> int:
        """Delete objects, 1,000 with each request. Returns how many there were.

        If S3 could not delete some, the others are deleted all the same, and then an
        `S3DeleteError` tells which, and why.
        """
        count, is_first = 0, True
        failed: builtins.list[tuple[str, S3Error]] = []
        async with aclosing(batches(keys, MAX_DELETED)) as several:
            async for some in several:
                for delete in self._deletions([checked_key(key) for key in some]):
                    with nullcontext() if is_first else after_others():
                        failed += await delete()
                    is_first = False
                count += len(some)
        if failed:
            raise not_deleted(self.name, count, failed) from failed[0][1]
        return count

    def _deletions(self, keys: builtins.list[str]) -> builtins.list[Deletion]:
        """The requests that delete these, as functions."""
        # XML has no form for control characters, so such keys are deleted one by one.
        alone = [key for key in keys if NOT_IN_XML.search(key)]
        several = [key for key in keys if not NOT_IN_XML.search(key)]
        deletions: builtins.list[Deletion] = [partial(self._delete_alone, key) for key in alone]
        if several:
            deletions.append(partial(self._delete_several, several))
        return deletions

    async def _delete_alone(self, key: str) -> builtins.list[tuple[str, S3Error]]:
        try:
            await self.delete(key)
        except S3Error as error:
            return [(key, error)]
        return []

    async def _delete_several(self, keys: builtins.list[str],
                              ) -> builtins.list[tuple[str, S3Error]]:
        failed = []
        content = '<Delete xmlns="{}"><Quiet>true</Quiet>{}</Delete>'.format(XMLNS, ''.join(
            f'<Object><Key>{escaped(key)}</Key></Object>' for key in keys))
        _, headers, data = await self._ask(
            b'POST', self.url, params=(('delete', ''),), key='', **content_of(content))
        for entry in parsed(data).iterfind('{*}Error'):
            key, code, message = (text_of(entry, name) for name in ('Key', 'Code', 'Message'))
            failed.append((key, S3Error(
                f'{code}: {message}', code=code, message=message, bucket=self.name, key=key,
                request_id=field(headers, b'x-amz-request-id'), headers=headers)))
        return failed

    # ------------------------------------------------------------------------- of one request

    def _url(self, key: str) -> str:
        # Most keys need no quoting, and to see that is cheaper than to quote.
        return self._prefix + (key if type(key) is str and UNRESERVED.fullmatch(key)
                               else quote(checked_key(key)))


def not_deleted(bucket: str, count: int,
                failed: builtins.list[tuple[str, S3Error]]) -> S3DeleteError:
    key, first = failed[0]
    error = S3DeleteError(
        f'{len(failed)} of {count} objects in {bucket} were not deleted. The first: {first}',
        code=first.code, message=first.message, bucket=bucket, key=key)
    error.failed = tuple(failed)
    return error


class Pages:
    """The pages of a listing. Each is asked for when it is needed."""

    __slots__ = ('_ask', '_params', '_token')

    def __init__(self, ask: Request,
                 params: Params) -> None:
        self._ask = ask
        self._params = params
        # Of the next page. None once there is none.
        self._token: str | None = ''

    def __repr__(self) -> str:
        return f'<Pages {"have ended" if self._token is None else "go on"}>'

    def __aiter__(self) -> Pages:
        return self

    async def __anext__(self) -> Page:
        if self._token is None:
            raise StopAsyncIteration
        more = (('continuation-token', self._token),) if self._token else ()
        *_, data = await self._ask(params=more + self._params)
        page, token = parse_page(data)
        if token is not None and token == self._token:
            raise S3Error('the server must go on in its listing, but it sent the same token twice')
        self._token = token
        return page


# -------------------------------------------------------------------------- what is read
#
# A response can break off after gigabytes. Then the rest is asked for with a range, on condition
# that the object is still the same (`if-match`), and whoever reads notices nothing. A server may
# answer a range with 200, so `content-range` alone tells what came.

class Content:
    """The content of an object, as an async iterator of bytes. `info` is what S3 tells of it.

    Iterate over all of it, `await` its `read()`, or close it with `aclose()`. It can also be used
    in an `async with`, which closes it. It passes on all attributes of the response's body.
    """

    __slots__ = ('info', '_body', '_position', '_stop', '_check', '_more', '_waits', '_is_closed',
                 '__weakref__')

    def __init__(self, info: ObjectInfo, body: Any, start: int, stop: int | None,
                 check: Check | None,
                 more: Callable[[ObjectInfo, int, int], Awaitable[Content]]) -> None:
        self.info = info
        self._body = body
        # What of the object comes next.
        self._position = start
        # Where the content has to end. None if the server has not told.
        self._stop = stop
        # None if the server has told no checksum of the whole content, or once it was checked.
        self._check = check
        self._more = more
        self._waits: Iterator[float] = iter(RESUME_INTERVALS)
        self._is_closed = False

    def __repr__(self) -> str:
        return f'<Content at {self._position} of {self._body!r}>'

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)

    def __aiter__(self) -> Content:
        return self

    async def __anext__(self) -> bytes:
        try:
            chunk: bytes = await anext(self._body)
        except StopAsyncIteration:
            self._finish()
            raise
        except HttpDataError as error:
            chunk = await self._go_on(error)
        self._position += len(chunk)
        if self._stop is not None and self._position > self._stop:
            await self.aclose()
            raise self._misfit('went on')
        if self._check is not None:
            self._check.update(chunk)
        return chunk

    async def _go_on(self, error: HttpDataError) -> bytes:
        """The next bytes, of another response. Raises the error if there can not be one."""
        stop = self._stop
        if self._is_closed or stop is None or not self.info.etag:
            raise error
        for seconds in self._waits:
            await self._body.aclose()
            if self._position == stop:
                # All has come, but for what ends a chunked content.
                self._finish()
                raise StopAsyncIteration
            LOGGER.info('Reading of an object broke off at byte %s, and goes on: %s',
                        self._position, error)
            await sleep(seconds * uniform(1, 1 + JITTER))
            try:
                self._body = (await self._more(self.info, self._position, stop))._body
                chunk: bytes = await anext(self._body)
            except HttpConnectionError as cause:
                # Of the first request, something was sent, so this is no such error.
                error.__cause__ = cause
            except HttpDataError as again:
                error = again
            except StopAsyncIteration:
                raise self._misfit('ended') from error
            except S3Error as changed:
                raise changed from error
            else:
                self._waits = iter(RESUME_INTERVALS)
                return chunk
        raise error

    def _finish(self) -> None:
        if self._stop is not None and self._position != self._stop:
            raise self._misfit('ended')
        check, self._check = self._check, None
        if check is not None:
            check.finish()

    def _misfit(self, what: str) -> HttpDataError:
        """A server can send more or less than it says, unless that is a `content-length`."""
        error = HttpDataError(
            'reading the response body: the server must send the object up to byte '
            f'{self._stop}, but its content {what} at byte {self._position}')
        error.response_started, error.phase = True, Phase.CONTENT
        return error

    async def read(self) -> bytes:
        """All that is still to come."""
        return b''.join([chunk async for chunk in self])

    async def aclose(self) -> None:
        """Close the connection, unless all has come. Who reads on gets an error."""
        self._is_closed = True
        await self._body.aclose()

    async def __aenter__(self) -> Content:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        traceback: TracebackType | None) -> None:
        await self.aclose()


def range_field(start: int, stop: int | None) -> bytes:
    """The value of `range` for a slice (RFC 9110 14.1.2)."""
    for name, value in (('start', start), ('stop', stop or 0)):
        if not isinstance(value, int):
            raise TypeError(f'{name} must be an int, got {type(value).__name__}')
    if start < 0 and stop is None:
        return b'bytes=%d' % start
    if start < 0 or stop is not None and stop <= start:
        raise ValueError('start and stop must be those of a slice that is not empty, and a '
                         f'negative start has no stop, got {start} and {stop}')
    return b'bytes=%d-' % start if stop is None else b'bytes=%d-%d' % (start, stop - 1)


def check_etag(info: ObjectInfo, if_match: str | None) -> None:
    """Raise if it is another object than was asked for: some servers ignore `if-match`."""
    if if_match not in (None, '*') and (not info.etag or info.etag not in if_match):
        raise S3PreconditionFailed(
            f'the object must have the ETag {if_match}, got {info.etag or "none"}', key=info.key,
            headers=info.headers)


def extent(info: ObjectInfo, start: int, stop: int | None) -> tuple[int, int | None]:
    """Where the content of a response begins and ends in its object. None if that is not known.

    Raises S3Error if it is not what the slice asks for.
    """
    came = info.content_range
    if came is None:
        size = info.size
        if not start and (stop is None or size is not None and size <= stop):
            return 0, size
        got = 'the whole object'
    else:
        first, end, size = came
        wanted = start if start >= 0 else -1 if size is None else max(0, size + start)
        # It may end before what was asked for at the end of the object only.
        ends = [each for each in (stop, size) if each is not None]
        if first == wanted and first < end == min(ends, default=end):
            return first, end
        got = f'bytes {first} to {end} of {size}'
    raise S3Error(f'the bytes {start} to {stop} were asked for, but the server sent {got}',
                  key=info.key, headers=info.headers)


# ------------------------------------------------------------------- the parts that arrive

async def arrived(get: Callable[..., Awaitable[Content]],
                  part_size: int, parallel: int, on_progress: OnProgress,
                  new_arrival: Callable[[OnProgress], Places | Turns]) -> ObjectInfo:
    """Fetch an object in parts, each with a request of its own. The first one tells its size."""
    async with await first_part(get, part_size) as first:
        info = first.info
        # Without `content-range`, the whole object is in the first part.
        size = info.size if info.content_range else 0
        if size is None or size > part_size and not info.etag:
            raise S3Error('the server must tell the size and the ETag of an object of which it '
                          f'sends a part, got {info.field(b"content-range")!r} and '
                          f'{info.etag!r}', key=info.key)
        rest = range(part_size, size, part_size)
        starts = iter(rest)
        arrival = new_arrival(on_progress)

        async def work(content: Content | None) -> None:
            if content is not None:
                await arrival.take(0, content)
            for start in starts:
                async with await first._more(info, start, min(start + part_size, size)) as content:
                    await arrival.take(start, content)

        if not rest:
            await arrival.take(0, first)
            return info
        contents = [first, *(None for _ in rest[:parallel - 1])]
        with after_others():
            await together(map(work, contents))
    return info


async def first_part(get: Callable[..., Awaitable[Content]], part_size: int) -> Content:
    try:
        return await get(start=0, stop=part_size)
    except S3Error as error:
        # An object without content has no range at all. That is a 416, but some servers send one
        # that there can not be, and some ignore ranges.
        if error.status not in (b'416', b''):
            raise
    return await get()


class Places:
    """Writes each part where it belongs in a file."""

    __slots__ = ('descriptor', 'on_progress')

    def __init__(self, descriptor: int, on_progress: OnProgress) -> None:
        self.descriptor = descriptor
        self.on_progress = on_progress

    async def take(self, start: int, content: Content) -> None:
        held: builtins.list[bytes] = []
        length = 0
        async for chunk in content:
            held.append(chunk)
            length += len(chunk)
            if length >= WRITE_SIZE or len(held) == MAX_HELD_CHUNKS:
                start = self._write(held, start)
                held, length = [], 0
        self._write(held, start)

    def _write(self, chunks: builtins.list[bytes], start: int) -> int:
        """Write the chunks, and return where they end."""
        written = os.pwritev(self.descriptor, chunks, start) if chunks else 0
        length = sum(map(len, chunks))
        while written < length:
            # A disk may take less than all, and then tell why it takes no more.
            rest = b''.join(chunks)[written:]
            written += os.pwrite(self.descriptor, rest, start + written)
        self.on_progress(length)
        return start + length


class Turns:
    """Passes the chunks of all parts on in order.

    The part whose turn it is passes its chunks on as they come. The others are held until then.
    """

    __slots__ = ('write', 'on_progress', 'turn', 'waiting')

    def __init__(self, write: Write, on_progress: OnProgress) -> None:
        self.write = write
        self.on_progress = on_progress
        # Where the part begins whose turn it is.
        self.turn = 0
        # Who waits for a turn, by where its part begins.
        self.waiting: dict[int, asyncio.Future[None]] = {}

    async def take(self, start: int, content: Content) -> None:
        held: deque[bytes] = deque()
        end = start
        async for chunk in content:
            held.append(chunk)
            end += len(chunk)
            if self.turn == start:
                await self._pass_on(held)
        if self.turn != start:
            self.waiting[start] = asyncio.get_running_loop().create_future()
            await self.waiting[start]
        await self._pass_on(held)
        self.turn = end
        waiter = self.waiting.pop(end, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def _pass_on(self, held: deque[bytes]) -> None:
        while held:
            chunk = held.popleft()
            result = self.write(chunk)
            if isawaitable(result):
                await result
            self.on_progress(len(chunk))


@contextmanager
def replaced(path: str | os.PathLike[str]) -> Iterator[int]:
    """The descriptor of a new file, which takes the place of the one at `path` at the end."""
    # By strings, since `pathlib` would take longer than all that the kernel does here.
    if not os.path.isabs(path):
        # The current folder of the process may be another one at the end.
        path = os.path.join(os.getcwd(), path)
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.islink(path)):
        # Such as /dev/null, which root could replace.
        raise ValueError(f'to must be the path of a file, and {path} is none')
    temporary = os.path.join(os.path.dirname(path), f'.{secrets.token_hex(16)}.part')
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            yield descriptor
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def descriptor_of(to: Any) -> int:
    """The descriptor of an open file, to which can be written anywhere."""
    descriptor: int = to.fileno()
    # Linux writes to the end of such a file, wherever a write is to go (`man 2 pwrite`).
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND:
        raise ValueError('to must not be a file that is opened for appending: its parts are '
                         'written where they belong')
    to.flush()
    return descriptor


# -------------------------------------------------------------------------- what is written
#
# A source gives parts, one after the other, with `next(size)`, and None at its end. It knows how
# large they are to be, and how many are sent at once, unless the caller says otherwise. A part is
# read for its hashes, and read again each time that it is sent. So a part of a stream is held in
# memory, and one of a file is not.

class Part(Protocol):
    size: int

    def pieces(self) -> Iterator[bytes]: ...


class Held:
    """A part in memory."""

    __slots__ = ('data', 'size')

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self.data = data
        self.size = len(data)

    def pieces(self) -> Iterator[bytes]:
        if isinstance(self.data, bytes):
            yield self.data
        else:
            for start in range(0, self.size, READ_SIZE):
                yield bytes(self.data[start:start + READ_SIZE])


class Memory:
    """Bytes in memory, which are not copied as a whole."""

    part_size, parallel = PART_SIZE, PARALLEL

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self.data = data
        self.view = memoryview(data).cast('B')
        self.size = len(self.view)
        self.position = 0

    def part(self, start: int, stop: int) -> Held:
        # Bytes need not be copied, if they are sent as a whole.
        is_whole = stop - start == self.size and isinstance(self.data, bytes)
        return Held(self.data) if is_whole else Held(self.view[start:stop])

    async def next(self, size: int) -> Held | None:
        start, self.position = self.position, self.position + size
        return self.part(start, self.position) if start < self.size else None

    async def aclose(self) -> None:
        """There is nothing to close."""


class OfFile:
    """A part of a file."""

    __slots__ = ('descriptor', 'start', 'size')

    def __init__(self, descriptor: int, start: int, size: int) -> None:
        self.descriptor = descriptor
        self.start = start
        self.size = size

    def pieces(self) -> Iterator[bytes]:
        start, end = self.start, self.start + self.size
        while start < end:
            piece = os.pread(self.descriptor, min(READ_SIZE, end - start), start)
            if not piece:
                raise ValueError('the file must not change while it is sent, but it ended at '
                                 f'byte {start} instead of {end}')
            yield piece
            start += len(piece)


class File:
    """A file, which is open while its parts are sent."""

    part_size, parallel = PART_SIZE, PARALLEL

    def __init__(self, path: Path) -> None:
        # To open a pipe would wait for who writes to it.
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        status = os.fstat(self.descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(self.descriptor)
            raise ValueError('data must be the Path of a regular file, since others do not tell '
                             f'their length, got {str(path)!r}')
        self.size = status.st_size
        self.position = 0

    def part(self, start: int, stop: int) -> OfFile:
        return OfFile(self.descriptor, start, min(stop, self.size) - start)

    async def next(self, size: int) -> OfFile | None:
        start, self.position = self.position, self.position + size
        return self.part(start, self.position) if start < self.size else None

    async def aclose(self) -> None:
        os.close(self.descriptor)


class OfStream:
    """A part of a stream: the chunks that came, which are not copied."""

    __slots__ = ('chunks', 'size')

    def __init__(self, chunks: builtins.list[bytes | bytearray], size: int) -> None:
        self.chunks = chunks
        self.size = size

    def pieces(self) -> Iterator[bytes]:
        return map(bytes, self.chunks)


def bytes_of(view: memoryview) -> bytes:
    """The bytes that a view is of, if it is of all of them."""
    whole = view.obj
    return whole if isinstance(whole, bytes) and len(whole) == len(view) else bytes(view)


def join(chunks: builtins.list[bytes | bytearray], small: memoryview) -> None:
    """Add what is too small for an object of its own."""
    if not chunks or isinstance(chunks[-1], bytes) or len(chunks[-1]) >= READ_SIZE:
        chunks.append(bytearray())
    chunks[-1] += small


class Stream:
    """An async iterable of bytes."""

    part_size, parallel = STREAM_PART_SIZE, STREAM_PARALLEL

    def __init__(self, chunks: Chunks, size: int | None) -> None:
        self.chunks = aiter(chunks)
        self.size = size
        self.taken = 0
        # What has come, and is in no part yet. None once the stream has ended.
        self.rest: memoryview | None = memoryview(b'')

    async def next(self, size: int) -> OfStream | None:
        chunks: builtins.list[bytes | bytearray] = []
        length = 0
        while self.rest is not None and length < size:
            taken = self.rest[:size - length]
            length += len(taken)
            if len(taken) >= JOINED_SIZE:
                chunks.append(bytes_of(taken))
            else:
                join(chunks, taken)
            self.rest = self.rest[len(taken):]
            # Also after the last byte of a part, so that an empty one is not begun.
            while self.rest is not None and not self.rest:
                self.rest = await self._chunk()
        self.taken += length
        if self.size is not None and (
                self.taken > self.size or self.rest is None and self.taken != self.size):
            raise ValueError(f'size must be the number of bytes of data, {self.size}, but '
                             f'{"at least " if self.rest else ""}{self.taken} came')
        return OfStream(chunks, length) if chunks else None

    async def _chunk(self) -> memoryview | None:
        async for chunk in self.chunks:
            # Others may be changed before they are sent.
            return memoryview(chunk if isinstance(chunk, bytes) else bytes(chunk))
        return None

    async def aclose(self) -> None:
        aclose = getattr(self.chunks, 'aclose', None)
        if aclose is not None:
            await aclose()


def source_of(data: Data, size: int | None) -> Memory | File | Stream:
    if size is not None:
        checked_count('size', size, 0)
    if isinstance(data, (bytes, bytearray, memoryview)):
        return Memory(data)
    if isinstance(data, Path):
        return File(data)
    if isinstance(data, streamed):
        return Memory(data.data)
    if hasattr(data, '__aiter__'):
        return Stream(data, size)
    if callable(data):
        return Stream(data(), size)
    raise TypeError('data must be bytes, a Path, an async iterable of bytes or a function '
                    f'that returns one, got {type(data).__name__}')


# ------------------------------------------------------------------------ an object is written

class Upload:
    """One object that is written, with one request or in parts."""

    __slots__ = ('bucket', 'key', 'url', 'fields', 'checksum', 'on_progress', 'ask_last', 'id',
                 'parts')

    def __init__(self, bucket: Bucket, key: str, fields: Fields, checksum: str | None,
                 on_progress: OnProgress) -> None:
        if checksum is not None:
            # An error now is better than one at the first part.
            new_checksum(checksum)
        self.bucket = bucket
        self.key = key
        self.url = bucket._url(key)
        self.fields = fields
        self.checksum = checksum
        self.on_progress = on_progress
        # What makes the object appear.
        self.ask_last = bucket._ask_once if only_conditions(fields) else bucket._ask
        # Of a multipart upload, once it has one.
        self.id = ''
        # What has been sent: the number of each part, and what S3 said of it.
        self.parts: dict[int, dict[str, str]] = {}

    async def send(self, source: Memory | File | Stream, parallel: int | None,
                   part_size: int | None) -> Written:
        bucket = self.bucket
        parallel = parallel or bucket.parallel or source.parallel
        part_size = part_size or bucket.part_size or source.part_size
        if source.size is not None:
            needed = -(-source.size // MAX_PARTS)
            part_size = max(part_size, -(-needed // MIB) * MIB)
        if isinstance(source, Stream):
            # In a list, from which it is taken: a variable here would hold it until the end.
            first: builtins.list[Part | None] = [await source.next(part_size)]
            if source.rest is None:
                return await self._send_whole(first[0] or Held(b''))
            return await self._send_parts(source, first, parallel, part_size)
        if source.size <= 2 * part_size:
            return await self._send_whole(source.part(0, source.size))
        return await self._send_parts(source, [], parallel, part_size)

    async def _send_whole(self, part: Part) -> Written:
        headers, rest = await self._content(part)
        _, response_headers, _ = await self.ask_last(
            b'PUT', self.url, key=self.key, headers=self.fields + headers, **rest)
        return Written(self.key, field(response_headers, b'etag'), version_of(response_headers), 0,
                       response_headers)

    async def _content(self, part: Part) -> tuple[Fields, dict[str, Any]]:
        """The fields of a part, and the arguments of the request that sends it."""
        hashes: builtins.list[Any] = []
        if self.bucket._is_signed:
            hashes.append(sha256())
        if self.checksum is not None:
            hashes.append(new_checksum(self.checksum))
        # A small file is read once, and not for each hash and each time that it is sent.
        if part.size <= READ_SIZE:
            part = Held(b''.join(part.pieces()))
        await hash_all(part, hashes)
        headers: Fields = ((b'content-length', b'%d' % part.size),)
        if self.checksum is not None:
            headers += ((b'x-amz-checksum-' + self.checksum.encode(),
                         hashes[-1].base64()),)
        return headers, {
            'body': self._body_of(part),
            'body_hash': hashes[0].hexdigest() if self.bucket._is_signed else 'UNSIGNED-PAYLOAD'}

    def _body_of(self, part: Part) -> Any:
        # It is sent with the head, without a generator, and without a turn for each piece.
        if self.on_progress is ignored and isinstance(part, Held) and isinstance(part.data, bytes):
            return streamed(part.data)
        return partial(self._body, part, [0])

    async def _body(self, part: Part, moved: builtins.list[int]) -> AsyncIterator[bytes]:
        if moved[0]:
            # It is sent once more.
            self.on_progress(-moved[0])
            moved[0] = 0
        try:
            for piece in part.pieces():
                yield piece
                moved[0] += len(piece)
                self.on_progress(len(piece))
        except Exception as error:
            # It is the caller's, or that of a file. For lowhaio_retry: to send it once more would
            # not mend it.
            error.is_lasting = True  # type: ignore[attr-defined]
            raise

    # --------------------------------------------------------------------------- in parts

    async def _send_parts(self, source: Memory | File | Stream, ready: builtins.list[Part | None],
                          parallel: int, part_size: int) -> Written:
        # Parts of a stream are taken from it one after the other, and sent side by side.
        lock = asyncio.Lock()
        count = 0

        async def take() -> tuple[int, Part] | None:
            nonlocal count
            async with lock:
                size = part_size if source.size is not None else (
                    part_size << count // PARTS_OF_ONE_SIZE)
                part = ready.pop() if ready else await source.next(size)
                count += 1
                return None if part is None else (count, part)

        async def work() -> None:
            while (taken := await take()) is not None:
                await self._send_part(*taken)
                # Or it would be held while the next one is filled.
                del taken

        return await self._in_parts(work, parallel)

    async def _send_part(self, number: int, part: Part) -> None:
        headers, rest = await self._content(part)
        _, response_headers, _ = await self.bucket._ask(
            b'PUT', self.url, params=self._params(number), key=self.key,
            headers=for_each_part(self.fields) + headers, **rest)
        sums = () if self.checksum is None else (
            ('Checksum' + self.checksum.upper(), headers[-1][1].decode()),)
        self._note(number, field(response_headers, b'etag'), *sums)

    async def copy(self, origin: str, size: int, etag: str) -> Written:
        """Let S3 copy an object of this size and ETag in parts."""
        part_size = max(COPY_PART_SIZE, -(-size // MAX_PARTS))
        numbered = enumerate(range(0, size, part_size), 1)

        async def work() -> None:
            for number, start in numbered:
                await self._copy_part(number, origin, etag, start, min(start + part_size, size))

        return await self._in_parts(work, self.bucket.parallel or PARALLEL)

    async def _copy_part(self, number: int, origin: str, etag: str, start: int,
                         stop: int) -> None:
        *_, data = await self.bucket._ask(
            b'PUT', self.url, params=self._params(number), key=self.key, timeouts=COPYING,
            headers=(
                *for_each_part(self.fields),
                (b'x-amz-copy-source', origin.encode()),
                (b'x-amz-copy-source-if-match', etag.encode('latin-1')),
                (b'x-amz-copy-source-range', range_field(start, stop))))
        self._note(number, text_of(parsed(data), 'ETag'))

    def _note(self, number: int, etag: str, *more: tuple[str, str]) -> None:
        if not etag:
            # It would be missed at the end only, or be taken for a part without content.
            raise S3Error('the server must tell the ETag of each part of a multipart upload, got '
                          f'none of part {number}', bucket=self.bucket.name, key=self.key)
        self.parts[number] = dict((('ETag', etag), *more))

    async def _in_parts(self, work: Callable[[], Coroutine[Any, Any, None]],
                        parallel: int) -> Written:
        """Make a multipart upload whose parts are sent by several of these at once."""
        # In a task of its own, because only the answer tells which upload is to be aborted if this
        # one is cancelled before it comes.
        creating = asyncio.create_task(self._create())
        try:
            await asyncio.shield(creating)
            with after_others():
                await together(work() for _ in range(parallel))
                return await self._complete()
        except BaseException as error:
            await self._abort(error, creating)
            raise

    async def _create(self) -> None:
        fields = without_conditions(self.fields)
        if self.checksum is not None:
            fields += ((b'x-amz-checksum-algorithm', self.checksum.upper().encode()),)
            if self.checksum == 'crc64nvme':
                # The only type that this one has.
                fields += ((b'x-amz-checksum-type', b'FULL_OBJECT'),)
        *_, data = await self.bucket._ask(
            b'POST', self.url, params=(('uploads', ''),), key=self.key,
            headers=(*fields, NO_CONTENT))
        self.id = text_of(parsed(data), 'UploadId')
        if not self.id:
            raise S3Error('the server has begun a multipart upload without an id',
                          bucket=self.bucket.name, key=self.key)

    async def _complete(self) -> Written:
        content = '<CompleteMultipartUpload xmlns="{}">{}</CompleteMultipartUpload>'.format(
            XMLNS, ''.join(
                f'<Part><PartNumber>{number}</PartNumber>{elements(told)}</Part>'
                for number, told in sorted(self.parts.items())))
        content_arguments = content_of(content)
        content_arguments['headers'] += (*only_conditions(self.fields),
                                         *for_each_part(self.fields))
        try:
            _, headers, data = await self.ask_last(
                b'POST', self.url, params=(('uploadId', self.id),), key=self.key,
                timeouts=COPYING, **content_arguments)
            # Some servers tell none here.
            etag = quoted(text_of(parsed(data), 'ETag')) or self._etag() or ''
        except S3NotFound as error:
            # An earlier try may have been carried out, although its answer did not come.
            try:
                info = await self.bucket.head(self.key, headers=for_each_part(self.fields))
            except (S3Error, HttpError):
                raise error from None
            if info.etag != self._etag():
                raise
            etag, headers = info.etag, info.headers
        return Written(self.key, etag, version_of(headers), len(self.parts), headers)

    def _etag(self) -> str | None:
        """What S3 makes of the ETags of the parts, if they are MD5s."""
        etags = [self.parts[number]['ETag'].strip('"') for number in sorted(self.parts)]
        if not all(map(MD5.fullmatch, etags)):
            return None
        joined = md5(bytes.fromhex(''.join(etags)), usedforsecurity=False).hexdigest()
        return f'"{joined}-{len(etags)}"'

    async def _abort(self, error: BaseException, creating: asyncio.Task[None]) -> None:
        """Abort the upload after this error, so that S3 does not keep parts for ever."""
        try:
            async with asyncio.timeout(ABORT_TIMEOUT):
                if not creating.done():
                    await creating
                if self.id:
                    await self.bucket._ask(b'DELETE', self.url, params=(('uploadId', self.id),),
                                           key=self.key)
        except S3NotFound:
            pass
        except (S3Error, HttpError, TimeoutError) as cause:
            which = self.id or 'that was to begin'
            LOGGER.warning('The multipart upload %s to %s was not aborted: %s', which,
                           self.bucket.name, cause)
            error.add_note(f'The multipart upload {which} was not aborted: {cause}')

    def _params(self, number: int) -> Params:
        if number > MAX_PARTS:
            raise ValueError(f'data must have at most {MAX_PARTS} parts: give its size, or a '
                             'larger part_size')
        return ('partNumber', str(number)), ('uploadId', self.id)


async def hash_all(part: Part, hashes: builtins.list[Any]) -> None:
    """Feed a part to these hashes, and let other tasks have their turns."""
    hashed = 0
    for piece in part.pieces() if hashes else ():
        with memoryview(piece) as view:
            for start in range(0, len(view), MAX_HASHED):
                for each in hashes:
                    each.update(view[start:start + MAX_HASHED])
                hashed += min(len(view) - start, MAX_HASHED)
                if hashed >= MAX_HASHED:
                    hashed = 0
                    await sleep(0)


async def together(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run them side by side, in tasks that end before this does.

    If one fails, the others are cancelled, and its exception is raised as it is. That may be a
    CancelledError of its own, which a TaskGroup would take for the end of its work. Besides, that
    of Python 3.11 and 3.12 leaves the caller's task one cancellation more.
    """
    running = {asyncio.create_task(work) for work in works}
    errors: builtins.list[BaseException] = []
    cancellations: builtins.list[asyncio.CancelledError] = []
    try:
        while running and not errors:
            running = await some_ended(running, errors)
    finally:
        for task in running:
            task.cancel()
        while running:
            try:
                running = await some_ended(running, errors)
            except asyncio.CancelledError as error:
                cancellations.append(error)
        # In variables, what is raised would refer to itself by way of this frame.
        if cancellations:
            raise cancellations.pop()
    if errors:
        raise errors.pop(0)


async def some_ended(tasks: set[asyncio.Task[None]],
                     errors: builtins.list[BaseException]) -> set[asyncio.Task[None]]:
    """Those that still run when one has ended. Errors of the others are added to the list."""
    ended, running = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in ended:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None:
            errors.append(error)
    return running


@contextmanager
def after_others() -> Iterator[None]:
    """For requests that follow others of the same call.

    An HttpConnectionError means that nothing has been sent, which is true of its request only.
    """
    try:
        yield
    except HttpConnectionError as cause:
        error = HttpDataError(str(cause))
        error.reused, error.phase, error.response_started = cause.reused, cause.phase, True
        raise error from cause


# ------------------------------------------------------------------------------- the answers

def opened(request: Request, bucket: str, forget: Callable[[], object] | None) -> Request:
    """A request whose response is returned, its content unread, if it is no error."""
    async def opened_request(method: bytes, url: str, *, key: str, **kwargs: Any,
                             ) -> Response:
        code, headers, body = response = await request(method, url, **kwargs)
        if code.startswith(b'2'):
            return response
        raise refusal(method, code, headers, await read_all(body, MAX_ERROR), bucket, key, forget)

    return opened_request


def asked(request: Request, bucket: str, forget: Callable[[], object] | None) -> Request:
    """A request with the content of its response in place of its body, if it is no error."""
    async def asked_request(method: bytes, url: str, *, key: str, **kwargs: Any,
                            ) -> Response:
        code, headers, body = await request(method, url, **kwargs)
        data = await read_all(body, MAX_XML)
        # What takes long is answered with 200 before it is known how it ends.
        if code.startswith(b'2') and not IS_ERROR.match(data):
            return code, headers, data
        raise refusal(method, code, headers, data, bucket, key, forget)

    return asked_request


# While it works, S3 sends spaces so that the connection is kept.
IS_ERROR = re.compile(rb'\s*+(?:<\?xml[^>]*\?>\s*+)?<Error[\s>]')
# After these, nobody knows whether it was done: a proxy may not have heard what came of it.
UNKNOWN = frozenset((b'500', b'502', b'504'))
MOVED = frozenset((b'301', b'307', b'400'))
BUSY = frozenset((b'429', b'500', b'502', b'503', b'504'))
BUSY_CODES = frozenset(('ConditionalRequestConflict', 'InternalError', 'OperationAborted',
                        'RequestTimeout', 'ServiceUnavailable', 'SlowDown', 'Throttling'))
REFUSED_CODES = frozenset(('ExpiredToken', 'InvalidAccessKeyId', 'InvalidToken',
                           'TokenRefreshRequired'))
# What S3 says of a copy of more than 5 GiB.
TOO_LARGE = frozenset(('EntityTooLarge', 'InvalidRequest'))
CLASSES = {b'304': S3NotModified, b'404': S3NotFound, b'412': S3PreconditionFailed}
INTERVALS = (
    (S3CredentialsRefused, (0,)),
    (S3Busy, BUSY_INTERVALS),
    (HttpConnectionError, CONNECTION_INTERVALS),
    (HttpDataError, DATA_INTERVALS),
)


def refusal(method: bytes, status: bytes, headers: Fields, data: bytes, bucket: str, key: str,
            forget: Callable[[], object] | None) -> S3Error:
    """The error that a response tells of."""
    root = told(data)
    code = text_of(root, 'Code') or reason_of(status)
    message = text_of(root, 'Message')
    request_id = field(headers, b'x-amz-request-id') or text_of(root, 'RequestId')
    # The response to a HEAD does not tell that a token has expired, but it is worth a try.
    is_refused = code in REFUSED_CODES or (
        method == b'HEAD' and status == b'400' and forget is not None)
    kind = (S3CredentialsRefused if is_refused else
            S3Busy if status in BUSY or code in BUSY_CODES else CLASSES.get(status, S3Error))
    # A bucket of another region, whose endpoint has to be asked.
    elsewhere = field(headers, b'x-amz-bucket-region') if status in MOVED else ''
    error = kind(
        f'S3 answered {status.decode()} {code}{": " if message else ""}{message} '
        f'({method.decode()} in {bucket}{", which is in " if elsewhere else ""}{elsewhere}, '
        f'request id {request_id or "unknown"})',
        status=status, code=code, message=message, request_id=request_id,
        host_id=field(headers, b'x-amz-id-2') or text_of(root, 'HostId'), bucket=bucket, key=key,
        headers=headers)
    if is_refused and forget is not None:
        forget()
    # Without others, the same credentials would be refused once more.
    error.is_lasting = is_refused and forget is None
    if DIGITS.fullmatch(seconds := field(headers, b'retry-after')):
        error.retry_after = int(seconds)
    return error


def if_not_made(method: bytes, error: Exception | None) -> bool:
    """Of `lowhaio_retry`: whether a write with a condition may be made again."""
    return not isinstance(error, S3Error) or (
        error.status not in UNKNOWN and error.code != 'InternalError')


def told(data: bytes) -> ElementTree.Element | None:
    """The XML of an error, or None if it is none: proxies answer in HTML, for example."""
    try:
        return ElementTree.fromstring(data.strip())
    except NOT_XML:
        return None


def reason_of(status: bytes) -> str:
    try:
        return HTTPStatus(int(status)).phrase
    except ValueError:
        return ''


async def read_all(body: Any, max_length: int) -> bytes:
    """The content of a response of this layer's own. The rest of one that is longer is cut off."""
    chunks, length = [], 0
    async for chunk in body:
        chunks.append(chunk)
        length += len(chunk)
        if length > max_length:
            await body.aclose()
            break
    return b''.join(chunks)


# ----------------------------------------------------------------------------- fields and XML

XMLNS = 'http://s3.amazonaws.com/doc/2006-03-01/'
# What XML 1.0 can not have, not even as a reference, and what its readers would change.
NOT_IN_XML = re.compile('[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]')
# What `quote` leaves as it is.
UNRESERVED = re.compile('[A-Za-z0-9_.~/-]+')
MD5 = re.compile('[0-9a-fA-F]{32}')
NAME = re.compile('[A-Za-z0-9][A-Za-z0-9._-]{1,254}')
NO_CONTENT = (b'content-length', b'0')
CHECKSUM_MODE = ((b'x-amz-checksum-mode', b'ENABLED'),)
CONDITIONS = (b'if-match', b'if-none-match')
EACH_PART = (b'x-amz-server-side-encryption-customer-', b'x-amz-copy-source-server-side-',
             b'x-amz-expected-bucket-owner', b'x-amz-request-payer')
# What a copy keeps of an object, and what a multipart upload has to be told.
REPLACE = (b'x-amz-metadata-directive', b'replace')
KEPT = (b'cache-control', b'content-disposition', b'content-encoding', b'content-language',
        b'content-type', b'expires')


# The last two are about an encoding that is not known, or not supported.
NOT_XML = (ElementTree.ParseError, expat.ExpatError, LookupError, ValueError)


def parsed(data: bytes) -> ElementTree.Element:
    """What S3 says of what it has done. Servers name the element in different ways."""
    try:
        root = ElementTree.fromstring(data.strip())
    except NOT_XML as cause:
        raise other_answer('XML', data) from cause
    if root.tag.rpartition('}')[2] == 'html':
        # The page of a proxy, which says nothing of what failed.
        raise other_answer('a result in XML', data)
    return root


def other_answer(wanted: str, data: bytes) -> S3Error:
    return S3Error(f'the server must answer with {wanted}, got {data[:100]!r}')


def text_of(element: ElementTree.Element | None, name: str) -> str:
    """The text of an element inside of another one, in whatever namespace, or `''`."""
    return '' if element is None else element.findtext('{*}' + name) or ''


def parse_page(data: bytes) -> tuple[Page, str | None]:
    """A page of a listing, and the token of the next one.

    A tree of all elements would cost as much again as all the rest, so each value is taken when
    its element ends.
    """
    entries, prefixes = [], []
    values: dict[str, str] = {}
    about_all: dict[str, str] = {}
    text: builtins.list[str] = []

    def on_start(name: str, attributes: object) -> None:
        text.clear()

    def on_end(name: str) -> None:
        nonlocal values
        name = name.rpartition(':')[2]
        if name == 'Contents':
            entries.append(values)
            values = {}
        elif name == 'CommonPrefixes':
            prefixes.append(values.get('Prefix', ''))
            values = {}
        else:
            (about_all if name in ABOUT_ALL else values)[name] = ''.join(text)
        text.clear()

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = on_start
    parser.EndElementHandler = on_end
    parser.CharacterDataHandler = text.append
    try:
        parser.Parse(data.strip(), True)
    except NOT_XML as cause:
        raise other_answer('XML', data) from cause
    if 'ListBucketResult' not in values:
        # That of a proxy for example, which would be taken for a listing without objects.
        raise other_answer('a ListBucketResult', data)
    token = about_all.get('NextContinuationToken') or None
    if token is None and about_all.get('IsTruncated') == 'true':
        raise S3Error('the server must tell how its listing goes on, but it sent no token')
    # A server that does not know `encoding-type` does not repeat it either.
    decoded = unquote_plus if about_all.get('EncodingType') == 'url' else str
    page = Page(tuple(listed(entry, decoded) for entry in entries), tuple(map(decoded, prefixes)))
    return page, token


ABOUT_ALL = frozenset(('EncodingType', 'IsTruncated', 'NextContinuationToken'))


def listed(values: Mapping[str, str], decoded: Callable[[str], str]) -> ListedObject:
    key, size = values.get('Key', ''), values.get('Size', '0')
    if not key or not DIGITS.fullmatch(size):
        raise S3Error(f'the server must list objects with a key and a size, got {values}')
    return ListedObject(
        # Nearly all keys are the same when they are decoded.
        key if UNRESERVED.fullmatch(key) else decoded(key), int(size),
        quoted(values.get('ETag', '')), values.get('LastModified', ''),
        values.get('StorageClass', ''))


def quoted(etag: str) -> str:
    """An ETag as responses have it: some servers leave out its quotation marks in XML."""
    return f'"{etag}"' if MD5.match(etag) else etag


def elements(values: Mapping[str, str]) -> str:
    return ''.join(f'<{name}>{escaped(value)}</{name}>' for name, value in values.items())


def escaped(text: str) -> str:
    return text.translate(ESCAPES)


# A reader of XML turns a bare carriage return into a line feed. The module of the standard library
# that escapes imports an HTTP client.
ESCAPES = str.maketrans({
    '&': '&amp;', '<': '&lt;', '>': '&gt;', '\r': '&#13;', '\n': '&#10;'})


def content_of(xml: str) -> dict[str, Any]:
    """The arguments of a request with this content. S3 wants an MD5 of what deletes."""
    data = xml.encode()
    digest = b64encode(md5(data, usedforsecurity=False).digest())
    return {
        'body': streamed(data),
        'body_hash': sha256(data).hexdigest(),
        'headers': ((b'content-length', b'%d' % len(data)), (b'content-type', b'application/xml'),
                    (b'content-md5', digest))}


def field(headers: Fields, wanted: bytes) -> str:
    """The value of a field, or `''`."""
    return next((value.decode('latin-1') for name, value in headers if name == wanted), '')


def version_of(headers: Fields) -> str:
    return field(headers, b'x-amz-version-id')


def versioned(version: str | None) -> Params:
    return () if version is None else (('versionId', version),)


def conditions(if_match: str | None, if_none_match: str | None, headers: Headers) -> Fields:
    fields = tuple(headers)
    if if_match is not None:
        fields += ((b'if-match', if_match.encode('latin-1')),)
    if if_none_match is not None:
        fields += ((b'if-none-match', if_none_match.encode('latin-1')),)
    return fields


def only_conditions(fields: Fields) -> Fields:
    return tuple(pair for pair in fields if pair[0].lower() in CONDITIONS)


def for_each_part(fields: Fields) -> Fields:
    """Those that S3 wants with each request of a multipart upload."""
    return tuple(pair for pair in fields if pair[0].lower().startswith(EACH_PART))


def without_conditions(fields: Fields) -> Fields:
    return tuple(pair for pair in fields if pair[0].lower() not in CONDITIONS)


def described(content_type: str | None, metadata: Mapping[str, str] | Pairs,
              given: Fields) -> Fields:
    """The fields that are kept with an object, beside those that are given."""
    fields: Fields = ()
    if content_type is not None:
        if any(name.lower() == b'content-type' for name, _ in given):
            raise ValueError('content_type must not be given beside a content-type in headers')
        fields += ((b'content-type', content_type.encode('latin-1')),)
    pairs = metadata.items() if isinstance(metadata, Mapping) else metadata
    for name, value in pairs:
        # S3 returns others in ways of its own.
        if not name.isascii() or not value.isascii():
            raise ValueError('metadata must be ASCII: quote what is not, with urllib.parse.quote '
                             'for example')
        fields += ((b'x-amz-meta-' + name.encode(), value.encode()),)
    return fields


def lowered(fields: Fields) -> Fields:
    return tuple((name.lower(), value.lower()) for name, value in fields)


def kept_fields(info: ObjectInfo) -> Fields:
    return tuple(pair for pair in info.headers
                 if pair[0] in KEPT or pair[0].startswith(b'x-amz-meta-'))


# ----------------------------------------------------------------------------------- arguments

def url_of_bucket(name: str, region: str, endpoint: str | None, path_style: bool | None) -> str:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError('name must be the name of a bucket: letters, digits, ".", "_" and "-", '
                         f'got {name!r}')
    domain = 'amazonaws.com.cn' if region.startswith('cn-') else 'amazonaws.com'
    base = (endpoint or f'https://s3.{region}.{domain}').rstrip('/')
    scheme, separator, rest = base.partition('://')
    if scheme.lower() not in ('http', 'https') or not separator or '?' in rest or '#' in rest:
        raise ValueError('endpoint must begin with http:// or https:// and have no query and no '
                         f'fragment, got {endpoint!r}')
    if path_style is None:
        path_style = endpoint is not None or '.' in name
    return f'{scheme.lower()}://{rest}/{name}' if path_style else (
        f'{scheme.lower()}://{name}.{rest}')


def checked_key(key: str) -> str:
    if not isinstance(key, str) or not key:
        raise ValueError(f'key must be a str that is not empty, got {key!r}')
    return key


def checked_count(name: str, value: int, minimum: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f'{name} must be a whole number, {minimum} or more, got {value!r}')
    return value


def checked_part_size(value: int | None) -> int | None:
    return None if value is None else checked_count('part_size', value, MIN_PART_SIZE)


async def batches(keys: Iterable[str] | AsyncIterable[str],
                  size: int) -> AsyncGenerator[builtins.list[str], None]:
    if isinstance(keys, str):
        raise TypeError('keys must be several str, got one')
    if isinstance(keys, AsyncIterable):
        batch: builtins.list[str] = []
        async for key in keys:
            batch.append(key)
            if len(batch) == size:
                yield batch
                batch = []
        if batch:
            yield batch
    else:
        iterator = iter(keys)
        while some := list(islice(iterator, size)):
            yield some


def ignored(_: int) -> None:
    """The default of `on_progress`."""
