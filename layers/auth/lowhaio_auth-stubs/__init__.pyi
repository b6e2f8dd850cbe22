# Made of lowhaio_auth.py by .ci/stubs.py.

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar
from lowhaio import Fields

__all__ = ['basic', 'bearer', 'digest']
Response = tuple[bytes, Fields, Any]
AnyRequest = TypeVar('AnyRequest', bound=Callable[..., Awaitable[Response]])
GetToken = Callable[[], str | Awaitable[str]]

def basic(
    request: AnyRequest,
    username: str,
    password: str,
    *,
    origin: str | None = None,
) -> AnyRequest: ...

def bearer(
    request: AnyRequest,
    get_token: GetToken,
    *,
    origin: str | None = None,
    on_refused: Callable[[str], object] | None = None,
) -> AnyRequest: ...

def digest(
    request: AnyRequest,
    username: str,
    password: str,
    *,
    origin: str | None = None,
    algorithms: Iterable[str] = ...,
) -> AnyRequest: ...
