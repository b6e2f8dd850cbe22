# Made of lowhaio_download.py by .ci/stubs.py.

import os
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple
from lowhaio import Fields, Headers, Params

__all__ = [
    'Downloaded',
    'DownloadBusyError',
    'DownloadDigestError',
    'DownloadError',
    'DownloadStatusError',
    'download',
]
Response = tuple[bytes, Fields, Any]
Request = Callable[..., Awaitable[Response]]
OnProgress = Callable[[int, int | None], object]
OnRetry = Callable[[int, float, Exception], object]

class Downloaded(NamedTuple):
    path: Path
    size: int
    resumed_from: int
    verified: tuple[str, ...]
    headers: Fields
    url: str
    def __repr__(self) -> str: ...

class DownloadError(Exception): ...

class DownloadStatusError(DownloadError):
    code: bytes
    headers: Fields
    content: bytes
    def __init__(self, text: str, code: bytes, headers: Fields, content: bytes) -> None: ...

class DownloadDigestError(DownloadError): ...

class DownloadBusyError(DownloadError): ...

async def download(
    request: Request,
    url: str,
    path: str | os.PathLike[str],
    params: Params = (),
    headers: Headers = (),
    *,
    digest: tuple[str, str | bytes] | None = None,
    pauses: Iterable[float] = ...,
    jitter: float = ...,
    max_retry_after: float = 120,
    parallel: int = 1,
    part_size: int = ...,
    keep_partial: bool = True,
    fsync: bool = True,
    resource: str | None = None,
    on_progress: OnProgress | None = None,
    on_retry: OnRetry | None = None,
    **kwargs: Any,
) -> Downloaded: ...
