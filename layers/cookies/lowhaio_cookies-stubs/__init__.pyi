# Made of lowhaio_cookies.py by .ci/stubs.py.

from collections.abc import Awaitable, Callable
from http.cookiejar import CookieJar
from typing import Any, TypeVar
from lowhaio import Fields

__all__ = ['with_cookies']
Response = tuple[bytes, Fields, Any]
AnyRequest = TypeVar('AnyRequest', bound=Callable[..., Awaitable[Response]])

def with_cookies(
    request: AnyRequest,
    jar: CookieJar,
    *,
    loopback_is_secure: bool = False,
) -> AnyRequest: ...
