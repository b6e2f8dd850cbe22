# Made of lowhaio_redirect.py by .ci/stubs.py.

from collections.abc import Awaitable, Callable, Container, Iterable
from typing import Any, NamedTuple, TypeVar
from lowhaio import Fields, Headers, HttpDataError, Phase

__all__ = [
    'DEFAULT_REDIRECTS',
    'DEFAULT_SCHEMES',
    'HARMLESS',
    'Hop',
    'HttpRedirectError',
    'HttpTooManyRedirects',
    'get',
    'hops',
    'redirectable',
    'strip_if_other_origin',
    'unchanged',
]
Response = tuple[bytes, Fields, Any]
AnyRequest = TypeVar('AnyRequest', bound=Callable[..., Awaitable[Response]])
Parts = tuple[bytes, Any, Any, Any, Fields]
Transform = Callable[[bytes, Any, Any, Any, Fields], Parts]
TransformHeaders = Callable[[Fields, str, str], Headers]

class Hop(NamedTuple):
    code: bytes
    url: str

class HttpRedirectError(HttpDataError):
    response_started: bool
    phase: Phase | str
    hops: tuple[Hop, ...]
    is_lasting: bool

class HttpTooManyRedirects(HttpRedirectError): ...

def hops(of: object) -> tuple[Hop, ...]: ...

HARMLESS: frozenset[bytes]

def unchanged(
    method: bytes,
    body: Any,
    body_args: Any,
    body_kwargs: Any,
    headers: Fields,
) -> Parts: ...

def get(method: bytes, body: Any, body_args: Any, body_kwargs: Any, headers: Fields) -> Parts: ...

def strip_if_other_origin(
    headers: Fields,
    request_origin: str,
    redirect_origin: str,
    kept: Container[bytes] = ...,
) -> Fields: ...

DEFAULT_REDIRECTS: tuple[tuple[bytes, Callable[[bytes], Transform]], ...]
DEFAULT_SCHEMES = (('http', 'http'), ('http', 'https'), ('https', 'https'))

def redirectable(
    request: AnyRequest,
    redirects: Iterable[tuple[bytes, Callable[[bytes], Transform]]] = ...,
    max_redirects: int = 20,
    transform_headers: TransformHeaders = ...,
    *,
    schemes: Iterable[tuple[str, str]] = ...,
    keep: Iterable[bytes] = (),
) -> AnyRequest: ...
