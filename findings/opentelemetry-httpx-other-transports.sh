#!/usr/bin/env bash
# OpenTelemetry's spans of httpx2 and httpx: none with another transport, three with one that is shared by three.
#
# Package: opentelemetry-instrumentation-httpx 0.66b2 (with httpx2 2.16.2).
# Guess: `HTTPX2ClientInstrumentor().instrument()` is for all requests of all clients: one span each, whatever
#   transport they go through.
# What happens: it wraps the method of httpx2's own transport class. A client with another transport has no span,
#   and nothing says so. `instrument_client(client)` wraps the transport that this client has, again for each
#   client that shares it, so that each request has as many spans.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    opentelemetry-instrumentation-httpx==0.66b2 opentelemetry-sdk==1.45.2 httpx2==2.16.2 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import http.server
import threading

import httpx2
from opentelemetry.instrumentation.httpx import HTTPX2ClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


class Other(httpx2.BaseTransport):
    def handle_request(self, request):
        return httpx2.Response(204)


server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))


def spans(client):
    exporter.clear()
    client.get(f'http://127.0.0.1:{server.server_port}/')
    return len(exporter.get_finished_spans())


def show(what, seen, expected):
    print(f'{what}: {seen}')
    assert seen == expected


HTTPX2ClientInstrumentor().instrument(tracer_provider=provider)
show('instrument(), the transport of httpx2', spans(httpx2.Client()), 1)
show('instrument(), another transport', spans(httpx2.Client(transport=Other())), 0)
HTTPX2ClientInstrumentor().uninstrument()

transport = Other()
clients = [httpx2.Client(transport=transport) for _ in range(3)]
for client in clients:
    HTTPX2ClientInstrumentor.instrument_client(client, tracer_provider=provider)
show('instrument_client(), one of three clients that share a transport', spans(clients[0]), 3)
PYTHON
# Seen:
#   instrument(), the transport of httpx2: 1
#   instrument(), another transport: 0
#   instrument_client(), one of three clients that share a transport: 3
