# Made of lowhaio_httpx2.py by .ci/stubs.py.

import ssl
from collections.abc import Iterable, Mapping
from typing import Any
import httpx2

__version__: str
__all__ = ['LowhaioAsyncClient', 'LowhaioTransport', 'client_for_anthropic', 'client_for_openai']
SocketOption = tuple[int, int, int | bytes | bytearray] | tuple[int, int, None, int]

class LowhaioAsyncClient(httpx2.AsyncClient):
    def __init__(
        self,
        *,
        verify: ssl.SSLContext | str | bool = True,
        cert: str | tuple[str, str] | tuple[str, str, str] | None = None,
        trust_env: bool = True,
        http1: bool = True,
        http2: bool = False,
        proxy: httpx2.URL | str | httpx2.Proxy | None = None,
        mounts: Mapping[str, httpx2.AsyncBaseTransport | None] | None = None,
        limits: httpx2.Limits = ...,
        transport: httpx2.AsyncBaseTransport | None = None,
        socket_options: Iterable[SocketOption] | None = None,
        **options: Any,
    ) -> None: ...

def client_for_openai(**options: Any) -> LowhaioAsyncClient: ...

def client_for_anthropic(**options: Any) -> LowhaioAsyncClient: ...

class LowhaioTransport(httpx2.AsyncBaseTransport):
    def __init__(
        self,
        verify: ssl.SSLContext | str | bool = True,
        cert: str | tuple[str, str] | tuple[str, str, str] | None = None,
        trust_env: bool = True,
        http1: bool = True,
        http2: bool = False,
        limits: httpx2.Limits = ...,
        proxy: httpx2.URL | str | httpx2.Proxy | None = None,
        uds: str | None = None,
        local_address: str | None = None,
        retries: int = 0,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> None: ...
    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response: ...
    async def aclose(self) -> None: ...
    def __del__(self) -> None: ...
