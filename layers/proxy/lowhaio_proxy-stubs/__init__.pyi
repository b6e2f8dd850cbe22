# Made of lowhaio_proxy.py by .ci/stubs.py.

import ssl
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from lowhaio import Close, Fields, Request

__all__ = ['Choose', 'Proxies', 'Proxy', 'ProxyError', 'from_environment', 'proxied_pool']
GetSslContext = Callable[[], ssl.SSLContext]

class ProxyError(Exception):
    code: bytes
    headers: Fields
    is_lasting: bool

class Proxy:
    __slots__ = ('scheme', 'host', 'port', 'name', 'auth', 'headers', '__weakref__')
    scheme: str
    host: str
    port: int
    name: str
    auth: tuple[bytes, bytes] | None
    headers: Fields
    def __init__(
        self,
        url: str,
        *,
        auth: tuple[str, str] | None = None,
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None: ...
    def __repr__(self) -> str: ...
    @property
    def is_http(self) -> bool: ...

Choose = Callable[[str, str, int], str | Proxy | None]
Proxies = str | Proxy | Mapping[str, str | Proxy] | Choose | None

def from_environment(environ: Mapping[str, str] = ...) -> dict[str, str | Proxy]: ...

def proxied_pool(
    proxies: Proxies,
    *,
    get_proxy_ssl_context: GetSslContext = ...,
    **options: Any,
) -> tuple[Request, Close]: ...
