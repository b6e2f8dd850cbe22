# Made of lowhaio_s3.py by .ci/stubs.py.

import os
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, IO, NamedTuple, NoReturn
from lowhaio import Fields, Headers
from lowhaio_aws_sigv4 import Credentials
from lowhaio_aws_sigv4_streaming import Check, ChecksumError

__all__ = [
    'Bucket',
    'ChecksumError',
    'Content',
    'ListedObject',
    'ObjectInfo',
    'Page',
    'S3Busy',
    'S3CredentialsRefused',
    'S3DeleteError',
    'S3Error',
    'S3NotFound',
    'S3NotModified',
    'S3PreconditionFailed',
    'Written',
]
Chunks = AsyncIterable[bytes]
Data = bytes | bytearray | memoryview | Path | Chunks | Callable[[], AsyncIterator[bytes]]
Write = Callable[[bytes], object]
Target = str | os.PathLike[str] | IO[bytes] | Write
OnProgress = Callable[[int], object]
Pairs = Iterable[tuple[str, str]]
Params = tuple[tuple[str, str], ...]
Response = tuple[bytes, Fields, Any]
Request = Callable[..., Awaitable[Response]]

class S3Error(Exception):
    status: bytes
    code: str
    message: str
    request_id: str
    host_id: str
    bucket: str
    key: str
    headers: Fields
    def __init__(
        self,
        text: str,
        *,
        status: bytes = b'',
        code: str = '',
        message: str = '',
        request_id: str = '',
        host_id: str = '',
        bucket: str = '',
        key: str = '',
        headers: Fields = (),
    ) -> None: ...

class S3NotFound(S3Error): ...

class S3NotModified(S3Error): ...

class S3PreconditionFailed(S3Error): ...

class S3Busy(S3Error): ...

class S3CredentialsRefused(S3Error): ...

class S3DeleteError(S3Error):
    failed: tuple[tuple[str, S3Error], ...]

class ObjectInfo:
    __slots__ = ('key', 'headers', '_fields')
    key: str
    headers: Fields
    def __init__(self, key: str, headers: Fields) -> None: ...
    def __repr__(self) -> str: ...
    def field(self, name: bytes) -> str: ...
    @property
    def size(self) -> int | None: ...
    @property
    def content_range(self) -> tuple[int, int, int | None] | None: ...
    @property
    def etag(self) -> str: ...
    @property
    def modified(self) -> datetime | None: ...
    @property
    def content_type(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def metadata(self) -> dict[str, str]: ...

class Written(NamedTuple):
    key: str
    etag: str
    version: str
    parts: int
    headers: Fields

class ListedObject(NamedTuple):
    key: str
    size: int
    etag: str
    last_modified: str
    storage_class: str
    @property
    def modified(self) -> datetime: ...

class Page(NamedTuple):
    objects: tuple[ListedObject, ...]
    prefixes: tuple[str, ...]

class Bucket:
    __slots__ = (
        'name',
        'region',
        'url',
        'parallel',
        'part_size',
        '_credentials',
        '_is_signed',
        '_checksum',
        '_prefix',
        '_open',
        '_ask',
        '_ask_once',
    )
    name: str
    region: str
    url: str
    parallel: int | None
    part_size: int | None
    def __init__(
        self,
        request: Request,
        name: str,
        credentials: Credentials,
        region: str,
        *,
        endpoint: str | None = None,
        path_style: bool | None = None,
        signed_payload: bool | None = None,
        checksum: str | None = None,
        parallel: int | None = None,
        part_size: int | None = None,
        on_retry: Callable[[int, float, Any], object] | None = None,
    ) -> None: ...
    def __repr__(self) -> str: ...
    def __reduce__(self) -> NoReturn: ...
    async def get(
        self,
        key: str,
        *,
        start: int = 0,
        stop: int | None = None,
        version: str | None = None,
        if_match: str | None = None,
        if_none_match: str | None = None,
        headers: Headers = (),
    ) -> Content: ...
    async def head(
        self,
        key: str,
        *,
        version: str | None = None,
        if_match: str | None = None,
        if_none_match: str | None = None,
        headers: Headers = (),
    ) -> ObjectInfo: ...
    async def download(
        self,
        key: str,
        to: Target,
        *,
        parallel: int | None = None,
        part_size: int | None = None,
        version: str | None = None,
        if_match: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> ObjectInfo: ...
    def list(
        self,
        prefix: str = '',
        *,
        delimiter: str = '',
        start_after: str = '',
        page_size: int = ...,
    ) -> Pages: ...
    async def presigned(
        self,
        key: str,
        *,
        method: bytes = b'GET',
        expires: int = 3600,
        params: Params = (),
        headers: Headers = (),
    ) -> str: ...
    async def put(
        self,
        key: str,
        data: Data,
        *,
        size: int | None = None,
        content_type: str | None = None,
        metadata: Mapping[str, str] | Pairs = (),
        if_match: str | None = None,
        if_none_match: str | None = None,
        checksum: str | None = None,
        headers: Headers = (),
        parallel: int | None = None,
        part_size: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> Written: ...
    async def copy(
        self,
        source_key: str,
        key: str,
        *,
        source: Bucket | None = None,
        version: str | None = None,
        if_match: str | None = None,
        if_none_match: str | None = None,
        headers: Headers = (),
    ) -> Written: ...
    async def delete(
        self,
        key: str,
        *,
        version: str | None = None,
        if_match: str | None = None,
    ) -> None: ...
    async def delete_many(self, keys: Iterable[str] | AsyncIterable[str]) -> int: ...

class Pages:
    __slots__ = ('_ask', '_params', '_token')
    def __init__(self, ask: Request, params: Params) -> None: ...
    def __repr__(self) -> str: ...
    def __aiter__(self) -> Pages: ...
    async def __anext__(self) -> Page: ...

class Content:
    __slots__ = (
        'info',
        '_body',
        '_position',
        '_stop',
        '_check',
        '_more',
        '_waits',
        '_is_closed',
        '__weakref__',
    )
    info: ObjectInfo
    def __init__(
        self,
        info: ObjectInfo,
        body: Any,
        start: int,
        stop: int | None,
        check: Check | None,
        more: Callable[[ObjectInfo, int, int], Awaitable[Content]],
    ) -> None: ...
    def __repr__(self) -> str: ...
    def __getattr__(self, name: str) -> Any: ...
    def __aiter__(self) -> Content: ...
    async def __anext__(self) -> bytes: ...
    async def read(self) -> bytes: ...
    async def aclose(self) -> None: ...
    async def __aenter__(self) -> Content: ...
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
