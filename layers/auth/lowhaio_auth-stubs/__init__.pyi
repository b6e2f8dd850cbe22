# Made of lowhaio_auth.py by .ci/stubs.py.

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar
from lowhaio import Fields

__all__ = ['Challenge', 'basic', 'bearer', 'best_challenge', 'digest']
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

class Challenge:
    __slots__ = (
        'parameters',
        'algorithm',
        'is_session',
        'qop',
        'nonce',
        'cnonce',
        'count',
        'secret',
    )
    parameters: dict[bytes, bytes]
    algorithm: str
    is_session: bool
    qop: bytes | None
    nonce: bytes
    cnonce: bytes
    count: int
    secret: bytes | None
    def __init__(self, parameters: dict[bytes, bytes]) -> None: ...
    def __repr__(self) -> str: ...
    def rank(self, accepted: tuple[str, ...]) -> int: ...
    @property
    def is_stale(self) -> bool: ...
    def hash(self, *parts: bytes) -> bytes: ...
    async def hash_content(
        self,
        headers: Fields,
        body: Any,
        body_args: Any,
        body_kwargs: Any,
    ) -> tuple[bytes, ...]: ...
    def answer(
        self,
        name: bytes,
        password: bytes,
        method: bytes,
        target: bytes,
        content_hash: tuple[bytes, ...],
    ) -> bytes: ...
    def take_next_nonce(self, fields: Fields) -> None: ...

def best_challenge(
    headers: Fields,
    accepted: Iterable[str] = ...,
    name: bytes = b'www-authenticate',
) -> Challenge | None: ...
