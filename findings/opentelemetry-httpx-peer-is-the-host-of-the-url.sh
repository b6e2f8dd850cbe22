#!/usr/bin/env bash
# OpenTelemetry's instrumentation of httpx tells a peer of requests that never had one, and it is a name.
#
# Packages: opentelemetry-instrumentation-httpx 0.66b1, httpx 0.28.1.
# Guess: `network.peer.address` and `network.peer.port` are those of the connection: which of the addresses of
#   a host was slow, or the proxy that was connected to. Where this is not known, they are not set, because
#   `server.address` has the host already.
# What happens: they are the host of the URL, and its port if it names one, also if no connection was made, and
#   also if the peer is a proxy. Who groups slow requests by peer groups them by host.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    httpx==0.28.1 opentelemetry-sdk==1.45.1 opentelemetry-instrumentation-httpx==0.66b1 2>/dev/null
OTEL_SEMCONV_STABILITY_OPT_IN=http "$work/venv/bin/python" - <<'PYTHON'
import contextlib
import http.server
import socket
import threading

import httpx
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
HTTPXClientInstrumentor().instrument(tracer_provider=provider)


def peer(url, **options):
    exporter.clear()
    with httpx.Client(**options) as client, contextlib.suppress(httpx.ConnectError):
        client.get(url)
    [span] = exporter.get_finished_spans()
    return span.attributes.get('network.peer.address'), span.attributes.get('network.peer.port')


class Proxy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args):
        pass


with socket.socket() as refusing:
    refusing.bind(('127.0.0.1', 0))
    port = refusing.getsockname()[1]
    found = peer(f'http://localhost:{port}/')
    print('refused:', found[0])
    assert found == ('localhost', port)
with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Proxy) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found = peer('http://www.example.com/', proxy=f'http://127.0.0.1:{server.server_port}')
    print('through a proxy at 127.0.0.1:', found)
    assert found == ('www.example.com', None)
    server.shutdown()
PYTHON
# Seen:
#   refused: localhost
#   through a proxy at 127.0.0.1: ('www.example.com', None)
