"""lowhaio-opentelemetry with other people's server, exporter and instrumentations of clients

The layer's own tests look at what the SDK was given. Here it leaves the process by OTLP, the
server continues the trace, and spans and metrics are compared with those that OpenTelemetry's own
instrumentations of aiohttp and httpx make of the same requests.
"""

import asyncio
import contextlib
import gzip
import http.server
import threading

import pytest

from lowhaio import HttpError, Pool, buffered
from lowhaio_opentelemetry import Telemetry
from tests.harness import PATIENCE, bound_to

for name in ('opentelemetry.exporter.otlp.proto.http', 'opentelemetry.instrumentation.fastapi',
             'opentelemetry.instrumentation.httpx', 'aiohttp', 'fastapi', 'httpx', 'uvicorn'):
    pytest.importorskip(name, exc_type=ImportError)

import aiohttp  # noqa: E402
import fastapi  # noqa: E402
import httpx  # noqa: E402
import uvicorn  # noqa: E402
from opentelemetry.exporter.otlp.proto.http.metric_exporter import (  # noqa: E402
    OTLPMetricExporter,
)
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: E402
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor  # noqa: E402
from opentelemetry.instrumentation.httpx import AsyncOpenTelemetryTransport  # noqa: E402
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (  # noqa: E402
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (  # noqa: E402
    ExportTraceServiceRequest,
)
from opentelemetry.sdk.metrics import MeterProvider  # noqa: E402
from opentelemetry.sdk.metrics.export import (  # noqa: E402
    InMemoryMetricReader,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import Resource  # noqa: E402
from opentelemetry.sdk.trace import TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import (  # noqa: E402
    InMemorySpanExporter,
)

# Other people's packages may use what is deprecated.
pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning')


@pytest.fixture(scope='module', autouse=True)
def stable_names():
    """Have the other instrumentations use the stable names, as this layer always does."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv('OTEL_SEMCONV_STABILITY_OPT_IN', 'http')
        yield


class Receiver(http.server.BaseHTTPRequestHandler):
    """Decodes what an exporter sends, and keeps it."""

    KINDS = {'/v1/traces': ExportTraceServiceRequest, '/v1/metrics': ExportMetricsServiceRequest}

    def do_POST(self):
        content = self.rfile.read(int(self.headers['content-length']))
        if self.headers['content-encoding'] == 'gzip':
            content = gzip.decompress(content)
        self.server.received.append(self.KINDS[self.path].FromString(content))
        self.send_response(200)
        self.send_header('content-length', '0')
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def receiver():
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Receiver) as server:
        server.received = []
        server.url = f'http://127.0.0.1:{server.server_port}'
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@contextlib.contextmanager
def serving(app):
    """Run an application under uvicorn, in a thread. Yields the port."""
    [sock] = bound_to('127.0.0.1')
    sock.listen()
    server = uvicorn.Server(uvicorn.Config(app, log_level='error', lifespan='off', loop='asyncio'))
    thread = threading.Thread(target=server.run, args=([sock],))
    thread.start()
    try:
        yield sock.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(PATIENCE)


def users():
    app = fastapi.FastAPI()

    @app.get('/users/{number}')
    async def user(number: int):
        return {'number': number}

    return app


def attributes_of(message):
    """The attributes of a decoded span or data point."""
    return {item.key: getattr(item.value, item.value.WhichOneof('value'))
            for item in message.attributes}


def test_a_trace_goes_from_the_client_to_the_server_and_both_to_the_receiver(receiver):
    providers = {}
    for service in ('client', 'server'):
        providers[service] = TracerProvider(
            resource=Resource.create({'service.name': service}), shutdown_on_exit=False)
        providers[service].add_span_processor(BatchSpanProcessor(
            OTLPSpanExporter(f'{receiver.url}/v1/traces')))
    meter_provider = MeterProvider([PeriodicExportingMetricReader(
        OTLPMetricExporter(f'{receiver.url}/v1/metrics'))], shutdown_on_exit=False)
    telemetry = Telemetry(
        providers['client'], meter_provider, experimental=True, with_steps=True)

    async def main(url):
        request, close = Pool(on_event=telemetry.watcher())
        _, _, body = await telemetry.traced(request)(
            b'GET', url, url_template='/users/{number}')
        content = await buffered(body)
        meter_provider.force_flush()
        await close()
        return content

    app = users()
    FastAPIInstrumentor.instrument_app(app, tracer_provider=providers['server'])
    with serving(app) as port:
        assert asyncio.run(main(f'http://127.0.0.1:{port}/users/7')) == b'{"number":7}'
    for provider in (*providers.values(), meter_provider):
        provider.shutdown()

    spans, services = {}, {}
    for request in receiver.received:
        for resource in getattr(request, 'resource_spans', ()):
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                spans[span.name, span.kind] = span
                services[span.span_id] = attributes_of(resource.resource)['service.name']
    client = spans['GET /users/{number}', 3]
    server = spans['GET /users/{number}', 2]
    assert (services[client.span_id], services[server.span_id]) == ('client', 'server')
    assert server.trace_id == client.trace_id
    assert server.parent_span_id == client.span_id
    assert spans['connect', 1].parent_span_id == client.span_id
    assert client.start_time_unix_nano <= server.start_time_unix_nano
    assert attributes_of(client)['http.response.body.size'] == 12

    metrics = [metric for request in receiver.received
               for resource in getattr(request, 'resource_metrics', ())
               for scope in resource.scope_metrics for metric in scope.metrics]
    points = [point for metric in metrics if metric.name == 'http.client.request.duration'
              for point in metric.histogram.data_points]
    assert {point.count for point in points} == {1}
    assert {attributes_of(point)['server.port'] for point in points} == {port}
    idle = [point.as_int for metric in metrics if metric.name == 'http.client.open_connections'
            for point in metric.sum.data_points
            if attributes_of(point)['http.connection.state'] == 'idle']
    # First before the pool was closed, and then after that.
    assert idle == [1, 0]


# ------------------------------------------------------------------------- as others do it


async def with_lowhaio(method, url, providers):
    request, close = Pool()
    try:
        _, _, body = await Telemetry(*providers).traced(request)(method.encode(), url)
        await buffered(body)
    except HttpError:
        pass
    finally:
        await close()


async def with_httpx(method, url, providers):
    transport = AsyncOpenTelemetryTransport(
        httpx.AsyncHTTPTransport(), tracer_provider=providers[0], meter_provider=providers[1])
    async with httpx.AsyncClient(transport=transport) as client:
        with contextlib.suppress(httpx.HTTPError):
            await client.request(method, url)


async def with_aiohttp(method, url, providers):
    # Each version of the instrumentations goes with one of the others, and not all appear at once.
    instrumentor = pytest.importorskip(
        'opentelemetry.instrumentation.aiohttp_client').AioHttpClientInstrumentor()
    instrumentor.instrument(tracer_provider=providers[0], meter_provider=providers[1])
    try:
        async with aiohttp.ClientSession() as session:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.request(method, url) as response:
                    await response.read()
    finally:
        instrumentor.uninstrument()


async def recorded(client, method, url):
    """The span and the measurement that a client makes of a request."""
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracer_provider = TracerProvider(shutdown_on_exit=False)
    tracer_provider.add_span_processor(SimpleSpanProcessor(exporter))
    meter_provider = MeterProvider([reader], shutdown_on_exit=False)
    await client(method, url, (tracer_provider, meter_provider))
    [span] = exporter.get_finished_spans()
    data = reader.get_metrics_data()
    metrics = [] if data is None else [
        metric for resource in data.resource_metrics
        for scope in resource.scope_metrics for metric in scope.metrics]
    return span, metrics


@pytest.fixture(scope='module')
def origin():
    with serving(users()) as port:
        yield f'http://127.0.0.1:{port}'


@pytest.fixture
def refusing_origin():
    [sock] = bound_to('127.0.0.1')
    with contextlib.closing(sock):
        yield f'http://127.0.0.1:{sock.getsockname()[1]}'


others = pytest.mark.parametrize('other', [with_aiohttp, with_httpx])


@others
@pytest.mark.parametrize('method, path', [
    ('GET', '/users/1'), ('GET', '/users/1?a=b&sig=secret'), ('GET', '/nowhere'),
    ('POST', '/users/1'), ('LIST', '/users/1')])
def test_a_response_is_recorded_as_by_another_client(origin, other, method, path):
    assert_alike(other, method, origin + path)


@others
def test_a_failure_is_recorded_as_by_another_client(refusing_origin, other):
    assert_alike(other, 'GET', refusing_origin + '/')


def assert_alike(other, method, url):
    ours, [our_metric] = asyncio.run(recorded(with_lowhaio, method, url))
    theirs, their_metrics = asyncio.run(recorded(other, method, url))
    assert (ours.name, ours.kind) == (theirs.name, theirs.kind)
    assert ours.status.status_code == theirs.status.status_code
    assert_attributes_alike(ours, theirs)
    # That of httpx measures no request that fails.
    assert their_metrics or other is with_httpx
    for their_metric in their_metrics:
        assert (our_metric.name, our_metric.unit) == (their_metric.name, their_metric.unit)
        [our_point], [their_point] = our_metric.data.data_points, their_metric.data.data_points
        assert our_point.explicit_bounds == their_point.explicit_bounds
        assert_attributes_alike(our_point, their_point)


def assert_attributes_alike(ours, theirs):
    """Ours has all that theirs has, and the same values."""
    ours, theirs = dict(ours.attributes), dict(theirs.attributes)
    if not theirs.get('error.type', '400').isdecimal():
        # Theirs has no module, though the conventions want a name that is fully qualified.
        assert ours.pop('error.type') == 'lowhaio.HttpConnectionError'
        assert '.' not in theirs.pop('error.type')
        # The instrumentation of httpx takes the peer from the URL, even if there was none.
        theirs = {name: value for name, value in theirs.items() if '.peer.' not in name}
    assert ours == {**ours, **theirs}
