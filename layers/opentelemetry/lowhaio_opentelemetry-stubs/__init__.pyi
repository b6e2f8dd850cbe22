# Made of lowhaio_opentelemetry.py by .ci/stubs.py.

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any, Protocol, TypeVar, overload
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider
from lowhaio import (
    Body,
    Event,
    Fields,
    GetLoggerAdapter,
    GetResolverLoggerAdapter,
    Headers,
    Params,
    Request,
    Response,
    Timeouts,
)

__all__ = ['KNOWN_METHODS', 'REDACTED_PARAMS', 'Telemetry', 'TracedRequest', 'counted']
__version__: str
KNOWN_METHODS: frozenset[bytes]
REDACTED_PARAMS: frozenset[str]
AnyResponse = tuple[bytes, Fields, Any]
AnyRequest = TypeVar('AnyRequest', bound=Callable[..., Awaitable[AnyResponse]])
PropagateTo = Callable[[str], object]

class TracedRequest(Protocol):
    def __call__(
        self,
        method: bytes,
        url: str,
        params: Params = (),
        headers: Headers = (),
        body: Body = ...,
        body_args: Iterable[Any] = (),
        body_kwargs: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
        get_logger_adapter: GetLoggerAdapter = ...,
        get_resolver_logger_adapter: GetResolverLoggerAdapter = ...,
        *,
        timeouts: Timeouts | None = None,
        target: bytes | None = None,
        server_hostname: str | None = None,
        url_template: str | None = None,
    ) -> Coroutine[Any, Any, Response]: ...

def counted(request: AnyRequest) -> AnyRequest: ...

class Telemetry:
    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        *,
        known_methods: Iterable[bytes] | None = None,
        redacted_params: Iterable[str] = ...,
        with_query: bool = True,
        request_headers: Iterable[bytes] = (),
        response_headers: Iterable[bytes] = (),
        propagate_to: PropagateTo | None = None,
        with_steps: bool = False,
        experimental: bool = False,
    ) -> None: ...
    @overload
    def traced(self, request: Request) -> TracedRequest: ...
    @overload
    def traced(self, request: AnyRequest) -> AnyRequest: ...
    def watcher(self) -> Callable[[Event], None]: ...
