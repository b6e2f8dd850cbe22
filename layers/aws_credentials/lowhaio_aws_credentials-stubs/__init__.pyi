# Made of lowhaio_aws_credentials.py by .ci/stubs.py.

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, NoReturn
from lowhaio import Fields, Headers

__all__ = [
    'Credentials',
    'CredentialsError',
    'assumed_role',
    'from_botocore',
    'from_chain',
    'from_container',
    'from_environment',
    'from_instance',
    'from_profile',
    'from_web_identity',
    'region_of_profile',
]
Request = Callable[..., Awaitable[tuple[bytes, Fields, Any]]]
Keys = tuple[str, str, Fields]
GetKeys = Callable[[], Awaitable[tuple[str, str, Headers]]]

class CredentialsError(Exception):
    is_lasting: bool
    def __init__(self, message: str, is_lasting: bool = False) -> None: ...

class Fetched(NamedTuple):
    keys: Keys
    expires: float | None
    ask_again_after: float

Fetch = Callable[[], Awaitable[Fetched]]

class Credentials:
    __slots__ = (
        '_name',
        '_fetch',
        '_held',
        '_fresh_until',
        '_is_fetching',
        '_waiters',
        '__weakref__',
    )
    def __init__(self, name: str, fetch: Fetch) -> None: ...
    def __repr__(self) -> str: ...
    def __reduce__(self) -> NoReturn: ...
    async def __call__(self) -> Keys: ...
    def forget(self) -> None: ...

def from_chain(
    request: Request,
    *,
    profile: str | None = None,
    region: str | None = None,
    sts_endpoint: str | None = None,
) -> Credentials: ...

def from_environment() -> Credentials: ...

def from_container(request: Request) -> Credentials: ...

def from_instance(request: Request, *, endpoint: str | None = None) -> Credentials: ...

def assumed_role(
    request: Request,
    credentials: GetKeys,
    role_arn: str,
    *,
    session_name: str | None = None,
    external_id: str | None = None,
    duration: int | None = None,
    region: str | None = None,
    endpoint: str | None = None,
) -> Credentials: ...

def from_web_identity(
    request: Request,
    *,
    role_arn: str | None = None,
    token_file: str | None = None,
    session_name: str | None = None,
    region: str | None = None,
    endpoint: str | None = None,
) -> Credentials: ...

def from_profile(
    request: Request,
    name: str | None = None,
    *,
    region: str | None = None,
    sts_endpoint: str | None = None,
) -> Credentials: ...

def region_of_profile(name: str | None = None) -> str | None: ...

def from_botocore(session: Any) -> Credentials: ...
