# Made of lowhaio_aws_sigv4.py by .ci/stubs.py.

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar
from lowhaio import Fields, Headers, Params

__all__ = [
    'Signature',
    'aws_sigv4_headers',
    'object_url',
    'presigned',
    'signed',
    'signed_for_regions',
]
Credentials = Callable[[], Awaitable[tuple[str, str, Headers]]]
Response = tuple[bytes, Fields, Any]
AnyRequest = TypeVar('AnyRequest', bound=Callable[..., Awaitable[Response]])

def signed(
    request: AnyRequest,
    credentials: Credentials,
    service: str,
    region: str,
    *,
    body_hash: str | None = None,
    origin: str | Iterable[str] | None = None,
) -> AnyRequest: ...

def signed_for_regions(
    request: AnyRequest,
    credentials: Credentials,
    service: str,
    regions: str = '*',
    *,
    body_hash: str | None = None,
    origin: str | Iterable[str] | None = None,
) -> AnyRequest: ...

async def presigned(
    url: str,
    credentials: Credentials,
    service: str,
    region: str,
    *,
    method: bytes = b'GET',
    expires: int = 3600,
    params: Params = (),
    headers: Headers = (),
) -> str: ...

class Signature:
    __slots__ = ('date', 'scope', 'value', 'sign')
    date: bytes
    scope: bytes
    value: bytes
    sign: Callable[[bytes], bytes]
    def __init__(
        self,
        date: bytes,
        scope: bytes,
        value: bytes,
        sign: Callable[[bytes], bytes],
    ) -> None: ...
    def __repr__(self) -> str: ...

def aws_sigv4_headers(
    access_key_id: str,
    secret_access_key: str,
    pre_auth_headers: Headers,
    service: str,
    region: str,
    host: str,
    method: str,
    path: str,
    params: Params,
    body_hash: str,
) -> Fields: ...

def object_url(bucket_url: str, key: str) -> str: ...
