# Made of lowhaio_session.py by .ci/stubs.py.

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, TypedDict, Unpack
from lowhaio import Fields, Params, Request, ResponseBody, Timeouts
from lowhaio_form import Data, File, Files
from lowhaio_redirect import Hop
from http.cookiejar import CookieJar

__all__ = ['ResponseHeaders', 'Session', 'SessionResponse', 'StatusError', 'compose']
Layer = Callable[[Any], Any]
AnyRequest = Callable[..., Awaitable[tuple[bytes, Fields, Any]]]
RequestHeaders = Mapping[str, str | Sequence[str]] | Iterable[tuple[str | bytes, str | bytes]]
Content = str | File | AsyncIterable[bytes] | Callable[[], AsyncIterator[bytes]]
Timeout = float | Timeouts
Limits = int | Mapping[str, float | None]
Made = Coroutine[Any, Any, 'SessionResponse']

class Options(TypedDict, total=False):
    params: Params
    headers: RequestHeaders | None
    json: Any
    data: Data | None
    files: Files | None
    content: Content | None
    timeout: Timeout | None

A = TypeVar('A')

def compose(request: A, /, *layers: Callable[[A], A]) -> A: ...

class Session:
    __slots__ = (
        'low_level',
        '_close',
        '_base',
        '_origin',
        '_headers',
        '_harmless',
        '_times',
        '_whole',
    )
    low_level: Request
    def __init__(
        self,
        base_url: str | None = None,
        *,
        headers: RequestHeaders = (),
        auth: tuple[str, str] | str | Callable[[], str | Awaitable[str]] | None = None,
        timeout: Timeout | None = None,
        limits: Limits | None = None,
        retries: int | Layer = 3,
        redirects: int | Layer = 20,
        cookies: bool | CookieJar = False,
        decompress: bool = True,
        layers: Iterable[Layer] = (),
        request: AnyRequest | None = None,
        **pool_options: Any,
    ) -> None: ...
    def __repr__(self) -> str: ...
    async def __aenter__(self) -> Session: ...
    async def __aexit__(self, *error: object) -> None: ...
    async def aclose(self) -> None: ...
    def get(self, url: str, **options: Unpack[Options]) -> Made: ...
    def head(self, url: str, **options: Unpack[Options]) -> Made: ...
    def options(self, url: str, **options: Unpack[Options]) -> Made: ...
    def post(self, url: str, **options: Unpack[Options]) -> Made: ...
    def put(self, url: str, **options: Unpack[Options]) -> Made: ...
    def patch(self, url: str, **options: Unpack[Options]) -> Made: ...
    def delete(self, url: str, **options: Unpack[Options]) -> Made: ...
    def request(
        self,
        method: str,
        url: str,
        *,
        params: Params = (),
        headers: RequestHeaders | None = None,
        json: Any = None,
        data: Data | None = None,
        files: Files | None = None,
        content: Content | None = None,
        timeout: Timeout | None = None,
        is_whole: bool = True,
    ) -> Made: ...
    def stream(self, method: str, url: str, **options: Unpack[Options]) -> Streaming: ...

class StatusError(Exception):
    response: SessionResponse
    status: int
    content: bytes
    def __init__(self, message: str, response: SessionResponse, content: bytes) -> None: ...

class ResponseHeaders(Mapping[str, str]):
    __slots__ = ('_fields', '_values')
    def __init__(self, fields: Fields) -> None: ...
    def __repr__(self) -> str: ...
    def __getitem__(self, name: str) -> str: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...
    def get_all(self, name: str) -> list[str]: ...
    def pairs(self) -> Iterator[tuple[str, str]]: ...

class Streaming:
    __slots__ = ('_made', '_response')
    def __init__(self, made: Made) -> None: ...
    async def __aenter__(self) -> SessionResponse: ...
    async def __aexit__(self, *error: object) -> None: ...

class SessionResponse:
    __slots__ = ('code', 'fields', 'body', '_content', '_method', '_url', '_params', '_headers')
    code: bytes
    fields: Fields
    body: ResponseBody
    def __init__(
        self,
        code: bytes,
        fields: Fields,
        body: Any,
        content: bytes | None,
        method: bytes,
        url: str,
        params: Params,
    ) -> None: ...
    def __repr__(self) -> str: ...
    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> ResponseHeaders: ...
    @property
    def history(self) -> tuple[Hop, ...]: ...
    @property
    def url(self) -> str: ...
    def __aiter__(self) -> AsyncIterator[bytes]: ...
    async def bytes(self) -> bytes: ...
    async def text(self) -> str: ...
    async def json(self) -> Any: ...
    def raise_for_status(self) -> SessionResponse: ...
