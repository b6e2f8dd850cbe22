#!/usr/bin/env bash
# The metric of OpenTelemetry's instrumentation of httpx has no request that failed to connect, or that
# timed out. Its spans have them, and the metric of the instrumentation of aiohttp has them too.
#
# Packages: opentelemetry-instrumentation-httpx and -aiohttp-client 0.66b1, httpx 0.28.1, aiohttp 3.14.5.
# Guess: `http.client.request.duration` counts each request, and one that fails has the class of the exception
#   as `error.type`, for which the conventions have that attribute. So an alert on the share of requests with
#   an `error.type` sees when a server is down.
# What happens: requests that end with an exception are in no metric at all. While the server is down, the share
#   of errors is that of nothing.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    httpx==0.28.1 aiohttp==3.14.5 opentelemetry-sdk==1.45.1 \
    opentelemetry-instrumentation-httpx==0.66b1 opentelemetry-instrumentation-aiohttp-client==0.66b1 2>/dev/null
OTEL_SEMCONV_STABILITY_OPT_IN=http "$work/venv/bin/python" - <<'PYTHON'
import asyncio
import contextlib
import socket

import aiohttp
import httpx
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


async def with_httpx(url):
    async with httpx.AsyncClient(timeout=0.5) as client:
        await client.get(url)


async def with_aiohttp(url):
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(0.5)) as session:
        async with session.get(url):
            pass


def recorded(instrumentor, client, url):
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor.instrument(tracer_provider=provider, meter_provider=MeterProvider([reader]))
    with contextlib.suppress(httpx.HTTPError, aiohttp.ClientError, TimeoutError):
        asyncio.run(client(url))
    instrumentor.uninstrument()
    data = reader.get_metrics_data()
    return [span.attributes['error.type'] for span in exporter.get_finished_spans()], [
        point.attributes['error.type']
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics for metric in scope.metrics
        for point in metric.data.data_points]


with socket.socket() as refusing, socket.socket() as silent:
    refusing.bind(('127.0.0.1', 0))
    silent.bind(('127.0.0.1', 0))
    silent.listen()
    for name, sock in ('refused', refusing), ('silent', silent):
        url = f'http://127.0.0.1:{sock.getsockname()[1]}/'
        spans, measured = recorded(AioHttpClientInstrumentor(), with_aiohttp, url)
        print(name, 'aiohttp: spans', spans, 'measured', measured)
        assert len(spans) == len(measured) == 1
        spans, measured = recorded(HTTPXClientInstrumentor(), with_httpx, url)
        print(name, 'httpx: spans', spans, 'measured', measured)
        assert len(spans) == 1 and measured == []
PYTHON
# Seen:
#   refused aiohttp: spans ['ClientConnectorError'] measured ['ClientConnectorError']
#   refused httpx: spans ['ConnectError'] measured []
#   silent aiohttp: spans ['TimeoutError'] measured ['TimeoutError']
#   silent httpx: spans ['ReadTimeout'] measured []
