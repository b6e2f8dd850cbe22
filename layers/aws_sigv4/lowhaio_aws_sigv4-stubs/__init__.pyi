# Made of lowhaio_aws_sigv4.py by .ci/stubs.py.

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar
from lowhaio import Fields, Headers, Params

__all__ = ['aws_sigv4_headers', 'object_url', 'signed']
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
