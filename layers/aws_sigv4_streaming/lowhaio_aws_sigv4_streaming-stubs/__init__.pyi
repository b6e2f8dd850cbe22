# Made of lowhaio_aws_sigv4_streaming.py by .ci/stubs.py.

from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, ParamSpec
from lowhaio_aws_sigv4 import AnyRequest, Credentials, object_url
from lowhaio import ConnectionFacts, Fields, HttpDataError, Phase, Response

__all__ = [
    'Check',
    'CheckedBody',
    'Checksum',
    'ChecksumError',
    'available_checksums',
    'check_of',
    'checked',
    'checksum',
    'object_url',
    'signed',
]
Data = bytes | bytearray | memoryview
AnyResponse = tuple[bytes, Fields, Any]
P = ParamSpec('P')

def available_checksums() -> tuple[str, ...]: ...

def checksum(name: str) -> Checksum: ...

class Checksum:
    __slots__ = ('name', 'update', '_hasher')
    name: str
    update: Callable[[Data], object]
    def __init__(self, name: str, hasher: Any) -> None: ...
    def __repr__(self) -> str: ...
    def digest(self) -> bytes: ...
    def base64(self) -> bytes: ...

def signed(
    request: AnyRequest,
    credentials: Credentials,
    service: str,
    region: str,
    *,
    checksum: str | None = 'crc32',
    signed_payload: bool = False,
    origin: str | Iterable[str] | None = None,
) -> AnyRequest: ...

def checked(
    request: Callable[P, Awaitable[AnyResponse]],
) -> Callable[P, Coroutine[Any, Any, Response]]: ...

def check_of(method: bytes, code: bytes, headers: Fields) -> Check | None: ...

class Check:
    __slots__ = ('algorithm', 'expected', 'update', '_checksum')
    algorithm: str
    expected: bytes
    update: Callable[[Data], object]
    def __init__(self, made: Checksum, expected: bytes) -> None: ...
    def __repr__(self) -> str: ...
    def finish(self) -> None: ...

class ChecksumError(HttpDataError):
    response_started: bool
    phase = Phase.CONTENT
    algorithm: str
    expected: bytes
    actual: bytes
    def __init__(self, algorithm: str, expected: bytes, actual: bytes) -> None: ...
    def __str__(self) -> str: ...

class CheckedBody:
    __slots__ = ('_body', '_check', '__weakref__')
    def __init__(self, body: Any, check: Check) -> None: ...
    def __repr__(self) -> str: ...
    @property
    def trailers(self) -> Fields: ...
    @property
    def request_sent(self) -> bool: ...
    @property
    def http_version(self) -> bytes: ...
    @property
    def reason(self) -> bytes: ...
    @property
    def connection(self) -> ConnectionFacts: ...
    def send(self, data: bytes) -> Coroutine[Any, Any, None]: ...
    def __getattr__(self, name: str) -> Any: ...
    def __aiter__(self) -> CheckedBody: ...
    async def __anext__(self) -> bytes: ...
    async def aclose(self) -> None: ...
