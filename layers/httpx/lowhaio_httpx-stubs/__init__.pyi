# Made of lowhaio_httpx.py by .ci/stubs.py.

import ssl
from collections.abc import Iterable, Mapping
from typing import Any
import httpx

__version__: str
__all__ = ['LowhaioAsyncClient', 'LowhaioTransport', 'client_for_anthropic', 'client_for_openai']
SocketOption = tuple[int, int, int | bytes | bytearray] | tuple[int, int, None, int]

class LowhaioAsyncClient(httpx.AsyncClient):
    def __init__(
        self,
        *,
        verify: ssl.SSLContext | str | bool = True,
        cert: str | tuple[str, str] | tuple[str, str, str] | None = None,
        trust_env: bool = True,
        http1: bool = True,
        http2: bool = False,
        proxy: httpx.URL | str | httpx.Proxy | None = None,
        mounts: Mapping[str, httpx.AsyncBaseTransport | None] | None = None,
        limits: httpx.Limits = ...,
        transport: httpx.AsyncBaseTransport | None = None,
        socket_options: Iterable[SocketOption] | None = None,
        **options: Any,
    ) -> None: ...

def client_for_openai(**options: Any) -> LowhaioAsyncClient: ...

def client_for_anthropic(**options: Any) -> LowhaioAsyncClient: ...

class LowhaioTransport(httpx.AsyncBaseTransport):
    def __init__(
        self,
        verify: ssl.SSLContext | str | bool = True,
        cert: str | tuple[str, str] | tuple[str, str, str] | None = None,
        trust_env: bool = True,
        http1: bool = True,
        http2: bool = False,
        limits: httpx.Limits = ...,
        proxy: httpx.URL | str | httpx.Proxy | None = None,
        uds: str | None = None,
        local_address: str | None = None,
        retries: int = 0,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> None: ...
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response: ...
    async def aclose(self) -> None: ...
    def __del__(self) -> None: ...
