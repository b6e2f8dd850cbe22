"""Spans and metrics of OpenTelemetry: a layer around the `request` of lowhaio.

::

    telemetry = Telemetry()
    request, close = Pool(on_event=telemetry.watcher())
    request = telemetry.traced(request)
    code, headers, body = await request(b'GET', 'https://example.com/')

Names and values are those of the semantic conventions for HTTP clients of OpenTelemetry, version
1.44. A `Call` is what is around a request, so that a request that is made again can be told from
another one. An `Exchange` is one traced request, until its response has ended. A `Watcher` adds
what only the pool knows.

The garbage collector may run anywhere, also where the SDK holds a lock. So what it may call, which
is `__del__` of a body and the events that a pool tells then, only takes notes. The SDK is called
later, by the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, TypeVar, cast, overload
from urllib.parse import unquote_plus
from weakref import WeakSet

from opentelemetry import metrics, propagate, trace
from opentelemetry.context import Context, attach, create_key, detach, get_current, get_value
from opentelemetry.context import set_value
from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation
from opentelemetry.propagators.textmap import Setter
from opentelemetry.trace import Span, SpanKind, StatusCode, TracerProvider

from lowhaio import (
    Body,
    BodyEnded,
    BodySent,
    ConnectionAttempted,
    ConnectionClosed,
    ConnectionFacts,
    ConnectionReleased,
    ConnectionTaken,
    Event,
    Fields,
    GetLoggerAdapter,
    GetResolverLoggerAdapter,
    HeadReceived,
    Headers,
    HeadSent,
    HttpError,
    NameResolved,
    Params,
    PlaceAwaited,
    Request,
    RequestFailed,
    RequestStarted,
    Response,
    ResponseStarted,
    Timeouts,
    TlsNegotiated,
    canonical_host,
    empty_async_iterator,
    encode_params,
)

__all__ = ['KNOWN_METHODS', 'REDACTED_PARAMS', 'Telemetry', 'TracedRequest', 'counted']

__version__ = '0.1.0'

SCHEMA_URL = 'https://opentelemetry.io/schemas/1.44.0'

KNOWN_METHODS: frozenset[bytes] = frozenset((
    b'CONNECT', b'DELETE', b'GET', b'HEAD', b'OPTIONS', b'PATCH', b'POST', b'PUT', b'QUERY',
    b'TRACE'))
"""The methods that spans and metrics name. Any other one is `_OTHER`, or there could be a series
of metrics for each word that a program is given."""

REDACTED_PARAMS: frozenset[str] = frozenset((
    'AWSAccessKeyId', 'Signature', 'X-Amz-Credential', 'X-Amz-Security-Token', 'X-Amz-Signature',
    'X-Goog-Signature', 'sig'))
"""The parameters of a query whose values are replaced by `REDACTED`: those of URLs that are
signed. Each of them has been in the list of the conventions, in one version or another."""

# The boundaries of histograms, in seconds, that the conventions recommend.
REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
CONNECTION_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)

PORTS = {'http': 80, 'https': 443}

AnyResponse = tuple[bytes, Fields, Any]
# A layer returns a function of the type that it was given: same arguments, same response.
AnyRequest = TypeVar('AnyRequest', bound=Callable[..., Awaitable[AnyResponse]])
Attributes = dict[str, Any]
PropagateTo = Callable[[str], object]
# What a pool tells of the course of a request: what is shown, and what else is needed.
Step = (PlaceAwaited | NameResolved | ConnectionAttempted | TlsNegotiated | HeadSent | BodySent
        | ResponseStarted)
OfRequest = Step | ConnectionTaken | BodyEnded | RequestFailed


class TracedRequest(Protocol):
    """The type of a `request` that `Telemetry.traced` returns: it has one more keyword."""

    def __call__(
            self, method: bytes, url: str, params: Params = (), headers: Headers = (),
            body: Body = empty_async_iterator, body_args: Iterable[Any] = (),
            body_kwargs: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
            get_logger_adapter: GetLoggerAdapter = ...,
            get_resolver_logger_adapter: GetResolverLoggerAdapter = ..., *,
            timeouts: Timeouts | None = None, target: bytes | None = None,
            server_hostname: str | None = None, url_template: str | None = None,
    ) -> Coroutine[Any, Any, Response]:
        """Send a request, as `lowhaio.Request` does.

        - `url_template`: the path of the URL without what differs from request to request, such
          as `'/users/{id}'`. The name of the span has it, and so have the metrics.
        """
        ...


# ------------------------------------------------------------------ which requests are one call
#
# A request that is made again, by a layer further out, has its number on its span. So what is
# around a request is kept in the context of OpenTelemetry, as the current span is. A body function
# runs within a request too, and may make another one, which is not the same request again. It can
# be told from that, because it goes through a layer that it is inside of already, or because a
# pool that is watched has the request.

KEY = create_key('lowhaio_opentelemetry')


class Call:
    """What is around the requests of one call."""

    __slots__ = ('layers', 'exchange', 'counts')

    def __init__(self, layer: object, around: Call | None, exchange: Exchange | None) -> None:
        self.layers: tuple[object, ...] = (*(around.layers if around else ()), layer)
        # The traced request that this is a part of.
        self.exchange = exchange
        # The requests that each traced layer has seen.
        self.counts: dict[object, int] = {}

    def count(self, layer: object) -> int:
        """How many requests of this call have come to the layer before."""
        number = self.counts.get(layer, 0)
        self.counts[layer] = number + 1
        return number


def call_around(layer: object) -> Call | None:
    """The call that a request belongs to which comes to this layer, or None if it is a new one."""
    call = cast(Call | None, get_value(KEY))
    if call is None or layer in call.layers:
        return None
    return None if call.exchange is not None and call.exchange.is_in_pool else call


def counted(request: AnyRequest) -> AnyRequest:
    """A `request` of which `Telemetry.traced`, further in, tells how often it was made again.

    Put it around lowhaio-retry and lowhaio-redirect. The spans of the second request of a call and
    of those after it then have `http.request.resend_count`. It makes no span of its own.
    """
    if not callable(request):
        raise TypeError(f'counted needs a function, got {type(request).__name__}')
    layer = object()

    async def counted_request(*args: Any, **kwargs: Any) -> AnyResponse:
        around = call_around(layer)
        call = Call(layer, around, around.exchange if around else None)
        token = attach(set_value(KEY, call))
        try:
            return await request(*args, **kwargs)
        finally:
            detach(token)

    return cast(AnyRequest, counted_request)


# -------------------------------------------------------------------------------- the layer

class Telemetry:
    """Makes spans and metrics of requests. One serves a whole program, and any number of pools.

    - `tracer_provider`, `meter_provider`: None stands for those of the program, even if they are
      set later.
    - `known_methods`: the methods that are named, as bytes. None stands for those of the variable
      `OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS`, or else for `KNOWN_METHODS`.
    - `redacted_params`: the names of the parameters of a query whose values `url.full` does not
      show, as str, in the case in which they are sent.
    - `with_query`: with False, `url.full` has no query at all, and no fragment.
    - `request_headers`, `response_headers`: the names of fields, as bytes, that become attributes
      of the span. There are none by default, since fields may hold secrets.
    - `propagate_to(origin)`: whether requests to an origin get the fields that propagate the
      context, such as `traceparent` and `baggage`. An origin is a str that always has the port,
      like `'https://www.example.com:443'`. None stands for all origins.
    - `with_steps`: with True, the span has a child for each wait for a connection, lookup, attempt
      to connect and TLS handshake, and events for what was sent and received. They come from the
      `watcher` of the pool.
    - `experimental`: with True, there are also the metrics and attributes that the conventions
      have not declared stable. Their names may change. Those of connections and of the sizes of
      bodies come from the `watcher` of the pool.

    Arguments that make no sense raise TypeError.
    """

    def __init__(self, tracer_provider: TracerProvider | None = None,
                 meter_provider: MeterProvider | None = None, *,
                 known_methods: Iterable[bytes] | None = None,
                 redacted_params: Iterable[str] = REDACTED_PARAMS, with_query: bool = True,
                 request_headers: Iterable[bytes] = (), response_headers: Iterable[bytes] = (),
                 propagate_to: PropagateTo | None = None, with_steps: bool = False,
                 experimental: bool = False) -> None:
        self._options = Options(
            tracer_provider, Instruments(meter_provider, experimental), known_methods,
            redacted_params, with_query, request_headers, response_headers, propagate_to,
            with_steps)

    @overload
    def traced(self, request: Request) -> TracedRequest: ...

    @overload
    def traced(self, request: AnyRequest) -> AnyRequest: ...

    def traced(self, request: Any) -> Any:
        """A `request` that makes a span, and a record in the metrics, each time it is called.

        The span ends when the response has been read to its end, has failed, or was closed. If the
        response is dropped, the span ends with what the program got of it last. Exceptions are
        recorded, and raised as they came.
        """
        if not callable(request):
            raise TypeError(f'traced needs a function, got {type(request).__name__}')
        return tracing(cast(Any, request), self._options)

    def watcher(self) -> Callable[[Event], None]:
        """A new function for `on_event` of a pool. Each pool needs one of its own.

        Pools count their requests and connections from 1, so two pools would be taken for one.
        """
        watcher = Watcher(self._options)
        self._options.instruments.watchers.add(watcher)
        return watcher


def tracing(request: Callable[..., Awaitable[AnyResponse]], options: Options,
            ) -> Callable[..., Coroutine[Any, Any, AnyResponse]]:
    layer = object()

    async def traced_request(
            method: bytes, url: str, params: Any = (), headers: Any = (),
            body: Any = empty_async_iterator, body_args: Any = (), body_kwargs: Any = (),
            *, url_template: str | None = None, **kwargs: Any) -> AnyResponse:
        asked = whole_url(url, params, kwargs.get('target'))
        headers = reiterable(headers)
        if options.has_no_sdk():
            # The context of another process can be current all the same.
            if get_current():
                headers, _ = options.propagated(headers, asked)
            return await request(
                method, url, params=params, headers=headers, body=body, body_args=body_args,
                body_kwargs=body_kwargs, **kwargs)

        around = call_around(layer)
        exchange = Exchange(options, around, method, asked, url_template)
        exchange.start(method, headers, around.count(layer) if around else 0)
        context = trace.set_span_in_context(exchange.span)
        token = attach(set_value(KEY, Call(layer, around, exchange), context))
        try:
            headers, exchange.injected = options.propagated(
                headers, asked, context, exchange.injected_before)
            response = await request(
                method, url, params=params, headers=headers, body=body, body_args=body_args,
                body_kwargs=body_kwargs, **kwargs)
        except BaseException as error:
            exchange.finish(error)
            raise
        finally:
            detach(token)
        return exchange.answered(response)

    return traced_request


class Options:
    """The checked arguments of `Telemetry`, and what spans and metrics are made with."""

    __slots__ = ('tracer_provider', 'tracer', 'instruments', 'methods', 'redacted_params',
                 'with_query', 'request_headers', 'response_headers', 'propagate_to',
                 'with_steps')

    def __init__(self, tracer_provider: TracerProvider | None, instruments: Instruments,
                 known_methods: Iterable[bytes] | None, redacted_params: Iterable[str],
                 with_query: bool, request_headers: Iterable[bytes],
                 response_headers: Iterable[bytes], propagate_to: PropagateTo | None,
                 with_steps: bool) -> None:
        if propagate_to is not None and not callable(propagate_to):
            raise TypeError(f'propagate_to must be a function or None, got {propagate_to!r}')
        if known_methods is None:
            known_methods = known_methods_default()
        self.tracer_provider = tracer_provider
        self.tracer = trace.get_tracer(
            __name__, __version__, tracer_provider=tracer_provider, schema_url=SCHEMA_URL)
        self.instruments = instruments
        self.methods = {
            method: method.decode() for method in checked('known_methods', known_methods, bytes)}
        self.redacted_params = frozenset(checked('redacted_params', redacted_params, str))
        self.with_query = with_query
        self.request_headers = attribute_names('request', request_headers)
        self.response_headers = attribute_names('response', response_headers)
        self.propagate_to = propagate_to
        self.with_steps = with_steps

    def has_no_sdk(self) -> bool:
        """Whether neither spans nor metrics go anywhere."""
        return is_of_api(self.tracer_provider or trace.get_tracer_provider()) and (
            not self.instruments.are_real())

    def propagated(self, headers: Any, url: str, context: Context | None = None,
                   injected_before: Fields = ()) -> tuple[Any, Fields]:
        """The headers with the fields that propagate the context, and these fields alone.

        Those that the caller gave stay. Those that a traced request further out has injected are
        replaced, or that request would be the parent of what the server does.
        """
        if injected_before:
            headers = tuple(field for field in headers if field not in injected_before)
        if not self.may_propagate(url):
            return headers, ()
        fields: list[tuple[bytes, bytes]] = []
        propagate.inject(fields, context, FIELD_SETTER)
        if not fields:
            return headers, ()
        try:
            given = {name.lower() for name, _ in headers or ()}
        except (AttributeError, TypeError, ValueError):
            return headers, ()  # they are refused
        injected = tuple(field for field in fields if field[0].lower() not in given)
        return (*(headers or ()), *injected), injected

    def may_propagate(self, url: str) -> bool:
        if self.propagate_to is None:
            return True
        server = server_of(url)
        return server is not None and bool(self.propagate_to(server.origin))

    def shown(self, url: str) -> str:
        """A URL as `url.full` has it, without credentials."""
        if '@' in url and server_of(url) is None:
            # It is refused, perhaps because of what a password has in it.
            url = f'{SCHEME.match(url)[0]}@{url.rpartition("@")[2]}'  # type: ignore[index]
        url, hash_mark, fragment = url.partition('#')
        url, question_mark, query = url.partition('?')
        scheme, separator, rest = url.partition('://')
        if not separator:
            scheme, rest = '', url
        authority, slash, path = rest.partition('/')
        userinfo, at, authority = authority.rpartition('@')
        if at:
            authority = f'REDACTED:REDACTED@{authority}'
        url = f'{scheme}{separator}{authority}{slash}{path}'
        if not self.with_query:
            return url
        if query:
            query = '&'.join(map(self.shown_param, query.split('&')))
        return f'{url}{question_mark}{query}{hash_mark}{fragment}'

    def shown_param(self, param: str) -> str:
        name, equals_sign, _ = param.partition('=')
        if equals_sign and unquote_plus(name) in self.redacted_params:
            return f'{name}=REDACTED'
        return param


def is_of_api(provider: object) -> bool:
    """Whether a provider is one of the API's own. None of these does anything."""
    return type(provider).__module__.startswith(('opentelemetry.trace', 'opentelemetry.metrics'))


def known_methods_default() -> Iterable[bytes]:
    listed = os.environ.get('OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS')
    if not listed:
        return KNOWN_METHODS
    return [method.strip().encode() for method in listed.split(',')]


def checked(name: str, values: Iterable[Any], kind: type) -> tuple[Any, ...]:
    """The values, as a tuple. A single str or bytes is not what was meant."""
    found = (None,) if isinstance(values, (bytes, str)) else tuple(values)
    if not all(isinstance(value, kind) for value in found):
        raise TypeError(f'{name} must be several {kind.__name__}, got {values!r}')
    return found


def attribute_names(message: str, names: Iterable[bytes]) -> dict[bytes, str]:
    """The attributes that fields of a request or a response become, by the names of the fields."""
    lowered = [name.lower() for name in checked(f'{message}_headers', names, bytes)]
    return {name: f'http.{message}.header.{name.decode()}' for name in lowered}


# ------------------------------------------------------------------------------- what is asked
#
# These functions look at arguments before the `request` does, which refuses bad ones with errors
# of its own. So they raise nothing, and leave out what they cannot make sense of.

class Server(NamedTuple):
    """Scheme, host and port of a URL, in the form in which they are sent."""

    scheme: str
    host: str
    port: int

    @property
    def origin(self) -> str:
        host = f'[{self.host}]' if ':' in self.host else self.host
        return f'{self.scheme}://{host}:{self.port}'


def whole_url(url: Any, params: Any, target: Any) -> str:
    """The URL that is asked for, or '' if there is none that makes sense."""
    if not isinstance(url, str):
        return ''
    if isinstance(target, bytes):
        text = target.decode('latin-1')
        if ABSOLUTE.match(text):
            return text
        # The target `*` asks for the server itself, so its URL has no path (RFC 9112 3.3).
        return ORIGIN.match(url)[0] + (text if text.startswith('/') else '')  # type: ignore[index]
    query = ''
    if params:
        with contextlib.suppress(TypeError):
            query = encode_params(params)
    if not query:
        return url
    url, hash_mark, fragment = url.partition('#')
    return f'{url}{"&" if "?" in url else "?"}{query}{hash_mark}{fragment}'


ABSOLUTE = re.compile('https?://', re.IGNORECASE)
# These match every string, so there always is a match.
SCHEME = re.compile(r'(?:[A-Za-z][A-Za-z0-9+.\-]*://)?')
ORIGIN = re.compile('(?:[^:/?#]*://)?[^/?#]*')
AUTHORITY = re.compile(r'([^:/?#]*)://(?:[^/?#]*@)?([^/?#@]*)')
HOST_AND_PORT = re.compile(r'(\[[^\]]*\]|[^:]*)(?::([0-9]{0,5}))?')


def server_of(url: str) -> Server | None:
    """Where a request for the URL goes, or None if it would be refused."""
    match = AUTHORITY.match(url)
    return server_of_authority(match[1].lower(), match[2]) if match else None


@lru_cache(1024)  # what it is called with holds no credentials
def server_of_authority(scheme: str, authority: str) -> Server | None:
    match = HOST_AND_PORT.fullmatch(authority)
    if match is None or scheme not in PORTS:
        return None
    try:
        return Server(scheme, canonical_host(match[1]), int(match[2] or PORTS[scheme]))
    except ValueError:
        return None


def values_of(wanted: Mapping[bytes, str], fields: Any) -> Attributes:
    """The values of the wanted fields, by the attributes that they become."""
    found: Attributes = {}
    if wanted:
        with contextlib.suppress(AttributeError, TypeError, ValueError):
            for name, value in fields or ():
                if (attribute := wanted.get(name.lower())) is not None:
                    found.setdefault(attribute, []).append(value.decode('latin-1'))
    return found


def reiterable(values: Any) -> Any:
    """The same values, as a tuple if they could be iterated over only once."""
    # Nearly all values are tuples, and looking at the class alone is the cheapest check.
    if type(values) is tuple:
        return values
    return tuple(values) if isinstance(values, Iterator) else values


class FieldSetter(Setter[list[tuple[bytes, bytes]]]):
    """Lets propagators set fields of a request."""

    def set(self, carrier: list[tuple[bytes, bytes]], key: str, value: str) -> None:
        carrier.append((key.encode(), value.encode()))


FIELD_SETTER = FieldSetter()


# --------------------------------------------------------------------------------- one request

class Exchange:
    """One traced request, until its response has ended."""

    __slots__ = ('options', 'span', 'server', 'loop', 'started', 'started_ns', 'last',
                 'is_measured', 'has_ended', 'labels', 'details', 'url', 'url_template',
                 'injected', 'injected_before', 'is_in_pool', 'facts', 'steps', 'request_size',
                 'response_size')

    span: Span

    def __init__(self, options: Options, around: Call | None, method: bytes, url: str,
                 url_template: str | None) -> None:
        outer = around.exchange if around else None
        self.options = options
        self.url = url
        self.server = server_of(url)
        self.url_template: str | None = (
            outer.url_template if outer and url_template is None else url_template)
        # What a traced request that is further out records is not recorded twice.
        self.is_measured = outer is None and options.instruments.are_real()
        self.injected_before = outer.injected if outer else ()
        self.injected: Fields = ()
        self.loop = asyncio.get_running_loop()
        # Time passes as in the events of the pool. The clock of the day may be set in between.
        self.started = self.last = time.monotonic()
        self.started_ns = time.time_ns()
        self.has_ended = False
        # The attributes of the metrics and the span, and those of the span alone.
        self.labels: Attributes = self.labels_at_start(method)
        self.details: Attributes = {}
        # What the watcher of the pool adds, and whether the pool has the request now.
        self.is_in_pool = False
        self.facts: ConnectionFacts | None = None
        self.steps: list[Step] = []
        self.request_size: int | None = None
        self.response_size: int | None = None

    def labels_at_start(self, method: bytes) -> Attributes:
        # What is no method may not even be hashable.
        labels: Attributes = {'http.request.method': self.options.methods.get(
            method, '_OTHER') if isinstance(method, bytes) else '_OTHER'}
        if self.server is not None:
            labels['server.address'] = self.server.host
            labels['server.port'] = self.server.port
        if self.url_template is not None:
            labels['url.template'] = self.url_template
        return labels

    def start(self, method: bytes, headers: Any, number: int) -> None:
        """Start the span, with all that a sampler may look at."""
        attributes = {**self.labels, 'url.full': self.options.shown(self.url),
                      **values_of(self.options.request_headers, headers)}
        name = attributes['http.request.method']
        if name == '_OTHER':
            name = 'HTTP'
            if isinstance(method, bytes):
                attributes['http.request.method_original'] = method.decode('latin-1')
        if number:
            attributes['http.request.resend_count'] = number
        if self.url_template is not None:
            name = f'{name} {self.url_template}'
        self.span = self.options.tracer.start_span(
            name, kind=SpanKind.CLIENT, attributes=attributes, start_time=self.started_ns)
        if self.is_measured:
            self.options.instruments.request_began(self.labels)

    def answered(self, response: AnyResponse) -> AnyResponse:
        """The response, whose end will be the end of the span."""
        code, headers, body = response
        if not self.is_measured and not self.span.is_recording():
            self.finish()
            return response
        self.last = time.monotonic()
        self.labels['http.response.status_code'] = int(code)
        version = getattr(body, 'http_version', b'')
        if version.startswith(b'HTTP/'):
            self.labels['network.protocol.version'] = version[5:].decode()
        if code >= b'400':
            self.labels['error.type'] = code.decode()
        self.facts = self.facts or getattr(body, 'connection', None)
        self.details = values_of(self.options.response_headers, headers)
        return code, headers, TracedBody(body, self)

    def finish(self, error: BaseException | None = None, ended: float | None = None) -> None:
        """End the span, once, and record the request in the metrics."""
        if self.has_ended:
            return
        self.has_ended = True
        ended = time.monotonic() if ended is None else ended
        if error is not None:
            self.labels['error.type'] = name_of(type(error))
        if self.is_measured:
            self.options.instruments.request_ended(self, ended - self.started)
        if self.span.is_recording():
            self.describe(error)
        self.span.end(self.nanoseconds(ended))

    def finish_later(self) -> None:
        """As `finish`, for a body that was dropped. That may have happened anywhere."""
        if not self.has_ended:
            soon(self.loop, self.finish, None, self.last)

    def describe(self, error: BaseException | None) -> None:
        span = self.span
        span.set_attributes({**self.labels, **self.details, **peer_of(self.facts), **self.sizes()})
        if 'error.type' in self.labels:
            # The message of an `HttpError` holds no secrets, and others may.
            span.set_status(
                StatusCode.ERROR, str(error) if isinstance(error, HttpError) else None)
        if isinstance(error, Exception):
            span.record_exception(error)
        context = trace.set_span_in_context(span)
        for step in self.steps:
            self.describe_step(step, context)
        self.steps.clear()

    def note(self, event: OfRequest) -> None:
        """Keep what the pool tells. This may be called from anywhere."""
        match event:
            case ConnectionTaken():
                self.facts = event.facts
            case BodyEnded():
                self.is_in_pool = False
                self.response_size = event.size
            case RequestFailed():
                self.is_in_pool = False
            case _:
                if isinstance(event, BodySent):
                    self.request_size = event.size
                if self.options.with_steps:
                    self.steps.append(event)

    def sizes(self) -> Attributes:
        """The sizes of the bodies that are known, if they are wanted."""
        if not self.options.instruments.is_experimental:
            return {}
        return {f'http.{message}.body.size': size
                for message, size in (('request', self.request_size),
                                      ('response', self.response_size)) if size is not None}

    def describe_step(self, step: Step, context: Context) -> None:
        """Make a child, or an event if it took no time, of what the pool has told."""
        name, attributes = described(step)
        if isinstance(step, (HeadSent, BodySent, ResponseStarted)):
            self.span.add_event(name, attributes, self.nanoseconds(step.time))
            return
        child = self.options.tracer.start_span(
            name, context, attributes=attributes, start_time=self.nanoseconds(step.started))
        if step.error is not None:
            child.set_attribute('error.type', name_of(type(step.error)))
            child.set_status(StatusCode.ERROR, str(step.error))
        child.end(self.nanoseconds(step.time))

    def nanoseconds(self, seconds: float) -> int:
        """A time of the monotonic clock as OpenTelemetry has it: nanoseconds since 1970."""
        return self.started_ns + round((seconds - self.started) * 1e9)


class TracedBody:
    """The body of a traced response. It passes on all other attributes of the body below it."""

    __slots__ = ('_body', '_exchange', '_readers', '__weakref__')

    def __init__(self, body: Any, exchange: Exchange) -> None:
        self._body = body
        self._exchange = exchange
        self._readers = 0

    def __repr__(self) -> str:
        return f'<TracedBody of {self._body!r}>'

    def __aiter__(self) -> TracedBody:
        return self

    async def __anext__(self) -> bytes:
        self._readers += 1
        try:
            chunk: bytes = await anext(self._body)
        except StopAsyncIteration:
            self._exchange.finish()
            raise
        except BaseException as error:
            if not self._goes_on(error):
                self._exchange.finish(error)
            raise
        finally:
            self._readers -= 1
        self._exchange.last = time.monotonic()
        return chunk

    def _goes_on(self, error: BaseException) -> bool:
        """Whether the body can be read on. It refuses a second reader for the first one's sake,
        and after 101 a reader that is cancelled has taken nothing."""
        return self._readers > 1 or isinstance(error, asyncio.CancelledError) and (
            self._exchange.labels['http.response.status_code'] == 101)

    async def aclose(self) -> None:
        try:
            await self._body.aclose()
        finally:
            self._exchange.finish()

    def __del__(self) -> None:
        self._exchange.finish_later()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)


def soon(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *args: object) -> None:
    """Have it called by the loop, or call it now if the loop has been closed."""
    try:
        # The garbage collector may run in another thread than the loop.
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        function(*args)


def name_of(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == 'builtins' else (
        f'{kind.__module__}.{kind.__qualname__}')


def peer_of(facts: ConnectionFacts | None) -> Attributes:
    """The attributes of the peer, whose address is a path for a socket of Unix."""
    peer = facts.peer if facts is not None else None
    if isinstance(peer, tuple):
        return {'network.peer.address': peer[0], 'network.peer.port': peer[1]}
    return {'network.peer.address': peer} if isinstance(peer, str) and peer else {}


def peer_from(text: str) -> Attributes:
    """The same, from text such as '192.0.2.1:443', '[::1]:443', '/run/http.sock' and ''."""
    address, _, port = text.rpartition(':')
    if address and port.isdecimal():
        return {'network.peer.address': address.strip('[]'), 'network.peer.port': int(port)}
    return {'network.peer.address': text} if text else {}


def described(step: Step) -> tuple[str, Attributes]:
    """A name for what the pool has told, and its attributes.

    There are no names for these in the conventions. The attributes are theirs.
    """
    match step:
        case PlaceAwaited():
            return 'wait for a connection', {}
        case NameResolved():
            return 'DNS lookup', {
                'dns.question.name': step.host, 'dns.answers': step.addresses}
        case ConnectionAttempted():
            return 'connect', peer_from(step.peer)
        case TlsNegotiated():
            return 'TLS handshake', {
                'tls.resumed': step.is_resumed, **({} if step.version is None else {
                    'tls.protocol.version': step.version.removeprefix('TLSv'),
                    'tls.cipher': step.cipher})}
        case HeadSent():
            return 'head sent', {}
        case BodySent():
            return 'body sent', {}
    return 'response started', {}


# ---------------------------------------------------------------------------------- metrics

class Instruments:
    """What measurements are recorded with."""

    __slots__ = ('meter_provider', 'is_experimental', 'duration', 'active', 'request_size',
                 'response_size', 'connection_duration', 'watchers')

    def __init__(self, meter_provider: MeterProvider | None, is_experimental: bool) -> None:
        meter = metrics.get_meter(
            __name__, __version__, meter_provider=meter_provider, schema_url=SCHEMA_URL)
        self.meter_provider = meter_provider
        self.is_experimental = is_experimental
        self.watchers: WeakSet[Watcher] = WeakSet()
        self.duration = meter.create_histogram(
            'http.client.request.duration', 's', 'Duration of HTTP client requests.',
            explicit_bucket_boundaries_advisory=REQUEST_SECONDS)
        if is_experimental:
            self.make_experimental(meter)

    def are_real(self) -> bool:
        """Whether what they record goes anywhere."""
        return not is_of_api(self.meter_provider or metrics.get_meter_provider())

    def make_experimental(self, meter: Meter) -> None:
        self.active = meter.create_up_down_counter(
            'http.client.active_requests', '{request}', 'Number of active HTTP requests.')
        self.request_size = meter.create_histogram(
            'http.client.request.body.size', 'By', 'Size of HTTP client request bodies.')
        self.response_size = meter.create_histogram(
            'http.client.response.body.size', 'By', 'Size of HTTP client response bodies.')
        self.connection_duration = meter.create_histogram(
            'http.client.connection.duration', 's',
            'The duration of the successfully established outbound HTTP connections.',
            explicit_bucket_boundaries_advisory=CONNECTION_SECONDS)
        # It is observed: so it costs nothing when a connection goes from one request to the next.
        meter.create_observable_up_down_counter(
            'http.client.open_connections', [self.open_connections], '{connection}',
            'Number of outbound HTTP connections that are currently active or idle on the client.')

    def request_began(self, labels: Attributes) -> None:
        if self.is_experimental:
            self.active.add(1, active_labels(labels))

    def request_ended(self, exchange: Exchange, seconds: float) -> None:
        labels = exchange.labels
        context = trace.set_span_in_context(exchange.span)
        self.duration.record(seconds, labels, context)
        if self.is_experimental:
            self.active.add(-1, active_labels(labels), context)
            if exchange.request_size is not None:
                self.request_size.record(exchange.request_size, labels, context)
            if exchange.response_size is not None:
                self.response_size.record(exchange.response_size, labels, context)

    def open_connections(self, options: CallbackOptions) -> Iterable[Observation]:
        counts: Counter[tuple[str, str]] = Counter()
        for watcher in self.watchers:
            # `dict` makes a copy at once, and a pool may go on in another thread.
            for (origin, state), count in dict(watcher.counts).items():
                counts[origin, state] += count
        return [Observation(count, {'http.connection.state': state, **labels_of_origin(origin)})
                for (origin, state), count in counts.items()]


def active_labels(labels: Attributes) -> Attributes:
    """The labels of a request that are known while it is active."""
    return {name: labels[name] for name in (
        'http.request.method', 'server.address', 'server.port', 'url.template') if name in labels}


def labels_of_origin(origin: str) -> Attributes:
    _, _, authority = origin.partition('://')
    host, _, port = authority.rpartition(':')
    return {'server.address': host.strip('[]'), 'server.port': int(port)}


class Watcher:
    """For `on_event` of one pool: adds what the pool tells to the requests that are traced.

    It only takes notes, since what the pool tells may come from the garbage collector.
    """

    __slots__ = ('options', 'loop', 'requests', 'states', 'counts', '__weakref__')

    loop: asyncio.AbstractEventLoop

    def __init__(self, options: Options) -> None:
        self.options = options
        # The origin of each request that has not ended, and what traces the request.
        self.requests: dict[int, tuple[str, Exchange | None]] = {}
        # The state of each connection that has served a request, and how many have which state.
        self.states: dict[int, str] = {}
        self.counts: dict[tuple[str, str], int] = {}

    def __repr__(self) -> str:
        return f'<Watcher of {len(self.requests)} requests and {len(self.states)} connections>'

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        match event:
            case RequestStarted():
                self.request_started(event)
            case ConnectionReleased():
                self.has_state(event.connection, event.origin, 'idle')
            case ConnectionClosed():
                self.connection_closed(event)
            case HeadReceived():
                pass
            case _:
                self.request_goes_on(event)

    def request_started(self, event: RequestStarted) -> None:
        call = cast(Call | None, get_value(KEY))
        self.loop = asyncio.get_running_loop()
        exchange = call.exchange if call else None
        self.requests[event.request] = event.origin, exchange
        if exchange is not None:
            exchange.is_in_pool = True

    def request_goes_on(self, event: OfRequest) -> None:
        origin, exchange = self.requests[event.request]
        match event:
            case ConnectionTaken():
                self.has_state(event.connection, origin, 'active')
            case BodyEnded() | RequestFailed():
                del self.requests[event.request]
        if exchange is not None:
            exchange.note(event)

    def has_state(self, connection: int, origin: str, state: str | None) -> None:
        """The connection is now active or idle, or it has closed: None."""
        if self.options.instruments.is_experimental:
            before = self.states.pop(connection, None)
            if before is not None:
                self.counts[origin, before] -= 1
            if state is not None:
                self.states[connection] = state
                self.counts[origin, state] = self.counts.get((origin, state), 0) + 1

    def connection_closed(self, event: ConnectionClosed) -> None:
        if event.connection in self.states:
            self.has_state(event.connection, event.origin, None)
            soon(self.loop, self.options.instruments.connection_duration.record,
                 event.time - event.opened, labels_of_origin(event.origin))
