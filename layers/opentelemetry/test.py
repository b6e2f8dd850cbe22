"""Tests of lowhaio_opentelemetry: the spans and metrics that the SDK has got, and what is sent."""

import asyncio
import pathlib
import types

import pytest
from opentelemetry import baggage, context, metrics, trace
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from opentelemetry.trace import NoOpTracerProvider, SpanKind, StatusCode

import lowhaio_opentelemetry
from lowhaio import (
    HttpConnectionError,
    HttpDataError,
    HttpTlsError,
    buffered,
    streamed,
)
from lowhaio_compression import decompressed
from lowhaio_opentelemetry import Telemetry, counted
from lowhaio_redirect import redirectable
from lowhaio_retry import retry
from tests.harness import (
    OK,
    SWITCHING,
    UPGRADE,
    Answering,
    Server,
    Streams,
    always,
    certified,
    failure,
    forever,
    get,
    head,
    holding,
    internet,
    of_length,
    on_loops,
    on_one_loop,
    pool,
    python_blocks,
    response,
    run_block,
    trusting,
    turns,
    unix_streams,
    until,
    value,
    values_of,
)


class Recorded:
    """A `Telemetry`, and what it has made of requests."""

    def __init__(self, sampler=ALWAYS_ON, **options):
        self.exporter = InMemorySpanExporter()
        self.reader = InMemoryMetricReader()
        self.tracer_provider = TracerProvider(sampler, shutdown_on_exit=False)
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meter_provider = MeterProvider([self.reader], shutdown_on_exit=False)
        self.telemetry = Telemetry(**{
            'tracer_provider': self.tracer_provider, 'meter_provider': self.meter_provider,
            **options})
        self.traced = self.telemetry.traced
        self.tracer = self.tracer_provider.get_tracer('the test')

    @property
    def spans(self):
        """The spans that have ended, in the order of their start."""
        return sorted(self.exporter.get_finished_spans(), key=lambda span: span.start_time)

    @property
    def span(self):
        [span] = self.spans
        return span

    def metrics(self):
        """The data points of each metric, by name."""
        data = self.reader.get_metrics_data()
        return {} if data is None else {
            metric.name: metric.data.data_points
            for resource in data.resource_metrics for scope in resource.scope_metrics
            for metric in scope.metrics}

    def values(self, name):
        """The sums of a metric, by the values of their attributes."""
        return {tuple(point.attributes.values()): getattr(point, 'value', None)
                or getattr(point, 'sum', 0) for point in self.metrics()[name]}


def parent_of(span):
    return span.parent and span.parent.span_id


def traceparent(span):
    return (f'00-{span.context.trace_id:032x}-{span.context.span_id:016x}'
            f'-{span.context.trace_flags:02x}').encode()


def seconds_of(span):
    return (span.end_time - span.start_time) / 1e9


def answering(code=b'200', body=None):
    """A request that is answered without a connection. It keeps what it was called with."""
    async def request(method, url, **kwargs):
        request.made.append((method, url, kwargs))
        request.contexts.append(context.get_current())
        return code, (), body

    request.made, request.contexts = [], []
    return request


class Content:
    """A body of a response of its own: what it is given, one after the other."""

    def __init__(self, *chunks):
        self.chunks = list(chunks)
        self.trailers = ((b'a', b'b'),)

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.chunks:
            raise StopAsyncIteration
        chunk = self.chunks.pop(0)
        if isinstance(chunk, BaseException):
            raise chunk
        return await forever() if chunk is None else chunk

    async def aclose(self):
        self.chunks = []


# ------------------------------------------------------------------------------------- a span


@on_loops
async def test_a_request_is_a_span_and_a_measurement():
    recorded = Recorded()
    async with Server(Answering(OK)) as server, pool() as request:
        assert (await get(recorded.traced(request), server.url + 'a?b=c#d'))[2] == b'ok'
    span = recorded.span
    assert (span.name, span.kind, span.parent) == ('GET', SpanKind.CLIENT, None)
    labels = {
        'http.request.method': 'GET',
        'server.address': '127.0.0.1',
        'server.port': server.port,
        'http.response.status_code': 200,
        'network.protocol.version': '1.1',
    }
    assert dict(span.attributes) == {
        **labels,
        'url.full': f'{server.url}a?b=c#d',
        'network.peer.address': '127.0.0.1',
        'network.peer.port': server.port,
    }
    assert (span.status.status_code, span.status.description) == (StatusCode.UNSET, None)
    assert (span.events, span.links) == ((), ())
    scope = span.instrumentation_scope
    assert (scope.name, scope.version, scope.schema_url) == (
        'lowhaio_opentelemetry', lowhaio_opentelemetry.__version__,
        'https://opentelemetry.io/schemas/1.44.0')

    [(name, [point])] = recorded.metrics().items()
    assert (name, point.count, dict(point.attributes)) == (
        'http.client.request.duration', 1, labels)
    assert point.sum == pytest.approx(seconds_of(span), abs=1e-8)
    assert point.explicit_bounds == (
        0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
    assert point.exemplars[0].span_id == span.context.span_id


@on_one_loop
async def test_a_span_is_the_child_of_the_current_one_and_current_while_the_request_is_made():
    recorded = Recorded()
    current = []

    async def request(method, url, **kwargs):
        current.append(trace.get_current_span())
        return b'200', (), Content()

    with recorded.tracer.start_as_current_span('outside') as outside:
        await get(recorded.traced(request), 'http://a.example/')
        assert trace.get_current_span() is outside
    first, second = recorded.spans
    assert parent_of(second) == first.context.span_id
    assert current[0].get_span_context() == second.context


URLS = {
    'http://a.example': ('http://a.example', 'a.example', 80),
    'https://A.example./a?b#c': ('https://A.example./a?b#c', 'a.example', 443),
    'HTTP://[::1]:81/': ('HTTP://[::1]:81/', '::1', 81),
    'http://[0:0::1]/': ('http://[0:0::1]/', '::1', 80),
    'https://a.example:/': ('https://a.example:/', 'a.example', 443),
    'http://user:secret@a.example/b@c': (
        'http://REDACTED:REDACTED@a.example/b@c', 'a.example', 80),
    'http://secret@a.example': ('http://REDACTED:REDACTED@a.example', 'a.example', 80),
    'http://a.example/?sig=1&x&y=2&sig=3': (
        'http://a.example/?sig=REDACTED&x&y=2&sig=REDACTED', 'a.example', 80),
    'http://a.example/?X-Amz-Signature=1&X-Amz-Credential=2&X-Amz-Security-Token=3&c=4': (
        'http://a.example/?X-Amz-Signature=REDACTED&X-Amz-Credential=REDACTED'
        '&X-Amz-Security-Token=REDACTED&c=4', 'a.example', 80),
    'http://a.example/?Signature=1&X-Goog-Signature=2&AWSAccessKeyId=3&SIG=4': (
        'http://a.example/?Signature=REDACTED&X-Goog-Signature=REDACTED&AWSAccessKeyId=REDACTED'
        '&SIG=4', 'a.example', 80),
    # The server decodes names, too.
    'http://a.example/?%73ig=1': ('http://a.example/?%73ig=REDACTED', 'a.example', 80),
    # What lowhaio refuses.
    'ftp://a.example/': ('ftp://a.example/', None, None),
    'http://a.example:x/': ('http://a.example:x/', None, None),
    'http://a b/': ('http://a b/', None, None),
    'a.example': ('a.example', None, None),
    'user:secret@a.example/b': ('REDACTED:REDACTED@a.example/b', None, None),
    '//user:secret@a.example': ('REDACTED:REDACTED@a.example', None, None),
    'https://user:se/cret@a.example/b': ('https://REDACTED:REDACTED@a.example/b', None, None),
    'https://user:se?cret@a.example/b': ('https://REDACTED:REDACTED@a.example/b', None, None),
    'https://user:se#cret@a.example/b': ('https://REDACTED:REDACTED@a.example/b', None, None),
    '': ('', None, None),
    None: ('', None, None),
}


@pytest.mark.parametrize('url', URLS)
@on_one_loop
async def test_the_url_is_shown_without_secrets(url):
    recorded = Recorded()
    request = answering()
    await recorded.traced(request)(b'GET', url)
    recorded.traced(request)
    await turns(2)
    attributes = recorded.span.attributes
    assert (attributes['url.full'], attributes.get('server.address'),
            attributes.get('server.port')) == URLS[url]
    assert request.made[0][1] == url


@pytest.mark.parametrize('url, kwargs, shown, address', [
    ('http://a.example/b', {'params': {'c': '1 2', 'sig': 's'}},
     'http://a.example/b?c=1+2&sig=REDACTED', 'a.example'),
    ('http://a.example/b?d#e', {'params': (('c', 1),)}, 'http://a.example/b?d&c=1#e', 'a.example'),
    ('http://a.example/b', {'params': 5}, 'http://a.example/b', 'a.example'),
    ('http://a.example/b?c', {'target': b'/d|e?sig=f'}, 'http://a.example/d|e?sig=REDACTED',
     'a.example'),
    ('http://a.example/b?c', {'target': b'*'}, 'http://a.example', 'a.example'),
    ('http://proxy.example', {'target': b'http://u:p@a.example:81/b'},
     'http://REDACTED:REDACTED@a.example:81/b', 'a.example'),
], ids=range(6))
@on_one_loop
async def test_the_url_is_what_is_asked_for(url, kwargs, shown, address):
    recorded = Recorded()
    request = answering()
    await recorded.traced(request)(b'GET', url, **kwargs)
    await turns(2)
    attributes = recorded.span.attributes
    assert (attributes['url.full'], attributes['server.address']) == (shown, address)
    assert request.made[0][2].items() >= kwargs.items()


@on_one_loop
async def test_a_query_can_be_left_out_and_other_parameters_be_redacted():
    for options, shown in (
            ({'with_query': False}, 'http://a.example/b'),
            ({'redacted_params': ['key']}, 'http://a.example/b?key=REDACTED&sig=2#f')):
        recorded = Recorded(**options)
        await recorded.traced(answering())(b'GET', 'http://a.example/b?key=1&sig=2#f')
        await turns(2)
        assert recorded.span.attributes['url.full'] == shown


@pytest.mark.parametrize('variable, options, method, name, label, original', [
    ('', {}, b'QUERY', 'QUERY', 'QUERY', None),
    ('', {}, b'LIST', 'HTTP', '_OTHER', 'LIST'),
    ('', {}, b'get', 'HTTP', '_OTHER', 'get'),
    ('', {}, 'GET', 'HTTP', '_OTHER', None),
    ('GET, LIST', {}, b'LIST', 'LIST', 'LIST', None),
    ('GET, LIST', {}, b'PUT', 'HTTP', '_OTHER', 'PUT'),
    ('GET', {'known_methods': [b'PUT']}, b'PUT', 'PUT', 'PUT', None),
], ids=range(7))
@on_one_loop
async def test_only_known_methods_are_named(
        variable, options, method, name, label, original, monkeypatch):
    monkeypatch.setenv('OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS', variable)
    recorded = Recorded(**options)
    await recorded.traced(answering())(method, 'http://a.example/')
    await turns(2)
    span = recorded.span
    assert (span.name, span.attributes['http.request.method'],
            span.attributes.get('http.request.method_original')) == (name, label, original)
    assert list(recorded.values('http.client.request.duration'))[0][0] == label


@on_one_loop
async def test_a_template_is_in_the_name_and_in_the_metrics():
    recorded = Recorded()
    request = answering()
    await recorded.traced(request)(b'GET', 'http://a.example/b/1', url_template='/b/{id}')
    await turns(2)
    assert recorded.span.name == 'GET /b/{id}'
    assert recorded.span.attributes['url.template'] == '/b/{id}'
    assert '/b/{id}' in list(recorded.values('http.client.request.duration'))[0]
    assert 'url_template' not in request.made[0][2]


@on_one_loop
async def test_fields_that_are_named_are_attributes():
    recorded = Recorded(request_headers=[b'X-Sent'], response_headers=[b'set-cookie'])
    answer = response(200, b'ok', b'Set-Cookie: \xe4', b'set-cookie: b', b'x-other: c')
    async with Server(Answering(answer)) as server, pool() as request:
        await get(recorded.traced(request), server.url, headers=iter((
            (b'x-sent', b'1'), (b'X-SENT', b'2'), (b'authorization', b'secret'))))
    attributes = {name: value for name, value in recorded.span.attributes.items()
                  if '.header.' in name}
    assert attributes == {'http.request.header.x-sent': ('1', '2'),
                          'http.response.header.set-cookie': ('ä', 'b')}


@on_one_loop
async def test_a_sampler_is_told_what_is_asked_for():
    class Asked(Sampler):
        def should_sample(self, parent, trace_id, name, kind, attributes, links, *args):
            asked.append((name, kind, dict(attributes)))
            return ALWAYS_ON.should_sample(parent, trace_id, name, kind, attributes, links)

        def get_description(self):
            raise AssertionError

    asked = []
    recorded = Recorded(Asked(), request_headers=[b'a'])
    await recorded.traced(answering())(b'GET', 'http://a.example/', headers=((b'a', b'b'),))
    assert asked == [('GET', SpanKind.CLIENT, {
        'http.request.method': 'GET', 'server.address': 'a.example', 'server.port': 80,
        'url.full': 'http://a.example/', 'http.request.header.a': ['b']})]


# ------------------------------------------------------------------------------ how it ends


@pytest.mark.parametrize('code', [302, 404, 503])
@on_one_loop
async def test_codes_from_400_on_are_errors(code):
    recorded = Recorded()
    async with Server(Answering(response(code))) as server, pool() as request:
        assert (await get(recorded.traced(request), server.url))[0] == str(code).encode()
    span = recorded.span
    is_error = code >= 400
    assert span.attributes['http.response.status_code'] == code
    assert span.attributes.get('error.type') == (str(code) if is_error else None)
    assert span.status.status_code == (StatusCode.ERROR if is_error else StatusCode.UNSET)
    assert (span.status.description, span.events) == (None, ())
    [labels] = recorded.values('http.client.request.duration')
    assert (str(code) in labels) == is_error


@on_loops
async def test_an_error_is_recorded_and_raised_as_it_came():
    recorded = Recorded()
    async with Server(None) as server:
        url = server.url
    raised = []

    async with pool() as request:
        async def keeping(*args, **kwargs):
            try:
                return await request(*args, **kwargs)
            except HttpConnectionError as error:
                raised.append(error)
                raise

        error = await failure(recorded.traced(keeping)(b'GET', url))
    assert raised == [error]
    span = recorded.span
    assert span.attributes['error.type'] == 'lowhaio.HttpConnectionError'
    assert 'http.response.status_code' not in span.attributes
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, str(error))
    [event] = span.events
    assert (event.name, event.attributes['exception.message']) == ('exception', str(error))
    [labels] = recorded.values('http.client.request.duration')
    assert labels == ('GET', '127.0.0.1', server.port, 'lowhaio.HttpConnectionError')


@on_one_loop
async def test_another_exception_has_no_description_because_it_may_hold_a_secret():
    async def request(method, url, **kwargs):
        raise KeyError('secret')

    recorded = Recorded()
    with pytest.raises(KeyError):
        await recorded.traced(request)(b'GET', 'http://a.example/')
    assert recorded.span.attributes['error.type'] == 'KeyError'
    assert (recorded.span.status.status_code, recorded.span.status.description) == (
        StatusCode.ERROR, None)


@pytest.mark.parametrize('kwargs, message', [
    ({'method': 'GET'}, 'method must be bytes'),
    ({'method': bytearray(b'GET')}, 'method must be bytes'),
    ({'url': b'http://a.example/'}, 'url must be'),
    ({'params': 5}, 'params must be'),
    ({'headers': 5}, 'headers must be'),
    ({'headers': ((b'a',),)}, 'headers must be'),
    ({'headers': (('a', 'b'),)}, 'headers must be'),
    ({'headers': ((1, 2),)}, 'headers must be'),
    ({'target': 'a'}, 'target must be'),
])
@on_one_loop
async def test_bad_arguments_are_refused_as_without_the_layer(kwargs, message):
    recorded = Recorded(request_headers=[b'a'])
    arguments = {'method': b'GET', 'url': 'http://a.example/', **kwargs}
    async with pool() as request:
        plain = await failure(request(**arguments))
        error = await failure(recorded.traced(request)(**arguments))
    assert (type(error), str(error)) == (type(plain), str(plain))
    assert f'refused: {message}' in str(error)
    assert recorded.span.attributes['error.type'] == 'lowhaio.HttpConnectionError'


@pytest.mark.parametrize('is_answered', [False, True])
@on_loops
async def test_a_cancelled_request_is_an_error_that_is_no_exception(is_answered):
    recorded = Recorded()
    script = holding(head(b'content-length: 5') + b'ab' if is_answered else b'')
    async with Server(script) as server, pool() as request:
        async def reading():
            _, _, body = await recorded.traced(request)(b'GET', server.url)
            async for _ in body:
                has_begun.set()

        has_begun = asyncio.Event()
        task = asyncio.create_task(reading())
        await (has_begun.wait() if is_answered else until(lambda: script.sent))
        assert recorded.spans == []
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    span = recorded.span
    assert span.attributes['error.type'] == 'asyncio.exceptions.CancelledError'
    assert span.attributes.get('http.response.status_code') == (200 if is_answered else None)
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, None)
    assert span.events == ()


@on_loops
async def test_a_body_that_is_cut_off_is_an_error():
    recorded = Recorded()

    async def script(peer):
        await peer.read_head()
        await peer.send(head(b'content-length: 5') + b'ab')

    async with Server(script) as server, pool() as request:
        _, _, body = await recorded.traced(request)(b'GET', server.url)
        error = await failure(buffered(body))
    assert type(error).__mro__[1] is HttpDataError
    span = recorded.span
    assert span.attributes['error.type'] == 'lowhaio.HttpConnectionClosedError'
    assert span.attributes['http.response.status_code'] == 200
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, str(error))


@on_loops
async def test_a_closed_body_ends_the_span_without_an_error():
    recorded = Recorded()
    async with Server(holding(head(b'content-length: 5') + b'ab')) as server, pool() as request:
        _, _, body = await recorded.traced(request)(b'GET', server.url)
        assert await anext(body) == b'ab'
        assert recorded.spans == []
        await body.aclose()
        assert 'error.type' not in recorded.span.attributes
        await body.aclose()
        with pytest.raises(HttpDataError):
            await anext(body)
    assert recorded.span.status.status_code == StatusCode.UNSET


@pytest.mark.parametrize('is_begun', [False, True])
@on_loops
async def test_a_dropped_body_ends_the_span_when_the_program_last_got_some_of_it(
        is_begun, monkeypatch):
    clock = types.SimpleNamespace(monotonic=lambda: clock.now, time_ns=lambda: 10 ** 18, now=100)
    monkeypatch.setattr(lowhaio_opentelemetry, 'time', clock)
    recorded = Recorded()
    async with Server(holding(head(b'content-length: 5') + b'ab')) as server, pool() as request:
        _, _, body = await recorded.traced(request)(b'GET', server.url)
        if is_begun:
            clock.now = 101.5
            await anext(body)
        clock.now = 107
        del body
        # It may be the garbage collector that drops it, while the SDK holds a lock.
        assert recorded.spans == []
        await turns(2)
    span = recorded.span
    assert (span.start_time, seconds_of(span)) == (10 ** 18, 1.5 if is_begun else 0)
    assert span.status.status_code == StatusCode.UNSET
    assert 'error.type' not in span.attributes


def test_a_body_that_is_dropped_when_the_loop_has_closed_ends_the_span():
    async def main():
        _, _, body = await recorded.traced(answering(body=Content(b'a')))(
            b'GET', 'http://a.example/')
        return body

    recorded = Recorded()
    body = asyncio.run(main())
    assert recorded.spans == []
    del body
    assert recorded.span.attributes['http.response.status_code'] == 200


@on_loops
async def test_a_second_reader_is_refused_and_the_span_ends_with_the_first():
    recorded = Recorded()
    async with Server(holding(head(b'content-length: 2'))) as server, pool() as request:
        _, _, body = await recorded.traced(request)(b'GET', server.url)
        first = asyncio.ensure_future(anext(body))
        await turns(2)
        assert 'being read by another task' in str(await failure(anext(body)))
        assert recorded.spans == []
        first.cancel()
        await asyncio.wait([first])
    assert recorded.span.attributes['error.type'] == 'asyncio.exceptions.CancelledError'


@on_loops
async def test_after_101_reading_goes_on_when_it_was_cancelled_and_so_does_the_span():
    async def script(peer):
        await peer.read_head()
        await peer.send(SWITCHING + b'\r\nupgrade: chat\r\n\r\n')
        assert await peer.read(1) == b'?'
        await peer.send(b'!')
        await peer.closed()

    recorded = Recorded()
    async with Server(script) as server, pool() as request:
        _, _, body = await recorded.traced(request)(b'GET', server.url, headers=UPGRADE)
        for _ in range(2):
            reader = asyncio.ensure_future(anext(body))
            await turns(2)
            reader.cancel()
            await asyncio.wait([reader])
        assert recorded.spans == []
        await body.send(b'?')
        assert await anext(body) == b'!'
        await body.aclose()
    assert 'error.type' not in recorded.span.attributes
    assert recorded.span.attributes['http.response.status_code'] == 101


@on_one_loop
async def test_the_body_is_that_of_the_pool_for_all_who_look_at_it():
    content = Content(b'a', b'b')
    recorded = Recorded()
    _, _, body = await recorded.traced(answering(body=content))(b'GET', 'http://a.example/')
    assert body.trailers == ((b'a', b'b'),)
    assert repr(body) == f'<TracedBody of {content!r}>'
    assert aiter(body) is body
    with pytest.raises(AttributeError, match='no attribute'):
        body.other  # noqa: B018
    assert await buffered(body) == b'ab'
    # What is known of a response of another layer may be less than that of a pool.
    assert 'network.protocol.version' not in recorded.span.attributes
    assert 'network.peer.address' not in recorded.span.attributes


@on_one_loop
async def test_a_peer_may_be_a_path():
    class Facts:
        peer = '/run/a.sock'

    content = Content()
    content.connection = Facts
    content.http_version = b'HTTP/1.0'
    recorded = Recorded()
    _, _, body = await recorded.traced(answering(body=content))(b'GET', 'http://a.example/')
    await buffered(body)
    assert recorded.span.attributes['network.peer.address'] == '/run/a.sock'
    assert 'network.peer.port' not in recorded.span.attributes
    assert recorded.span.attributes['network.protocol.version'] == '1.0'


# ----------------------------------------------------------------------------- propagation


@on_loops
async def test_the_context_is_sent():
    recorded = Recorded()
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        token = context.attach(baggage.set_baggage('who', 'me'))
        await get(recorded.traced(request), server.url, headers=iter(((b'a', b'b'),)))
        context.detach(token)
    [sent] = script.heads
    assert values_of(sent, b'a') == [b'b']
    assert values_of(sent, b'traceparent') == [traceparent(recorded.span)]
    assert values_of(sent, b'baggage') == [b'who=me']


@on_one_loop
async def test_what_the_caller_gives_is_not_sent_twice():
    recorded = Recorded()
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        await get(recorded.traced(request), server.url, headers=((b'TraceParent', b'mine'),))
    assert values_of(script.heads[0].replace(b'TraceParent', b'traceparent'),
                     b'traceparent') == [b'mine']


@on_one_loop
async def test_the_context_goes_to_chosen_origins():
    recorded = Recorded(propagate_to={'https://[::1]:443', 'http://a.example:80'}.__contains__)
    request = answering()
    for url in ('https://[::1]/', 'http://a.example', 'http://a.example:81', 'http://b.example',
                'https://a.example/', None):
        await recorded.traced(request)(b'GET', url, headers=None)
    assert [len(kwargs['headers'] or ()) for _, _, kwargs in request.made] == [1, 1, 0, 0, 0, 0]


@on_one_loop
async def test_what_propagate_to_raises_ends_the_span():
    recorded = Recorded(propagate_to=lambda origin: 1 / 0)
    request = answering()
    with pytest.raises(ZeroDivisionError):
        await recorded.traced(request)(b'GET', 'http://a.example/')
    assert recorded.span.attributes['error.type'] == 'ZeroDivisionError'
    assert request.made == []


@on_one_loop
async def test_what_is_not_sampled_says_so_and_is_measured_all_the_same():
    for options in ({}, {'meter_provider': NoOpMeterProvider()}):
        recorded = Recorded(ALWAYS_OFF, **options)
        content = Content()
        request = answering(body=content)
        _, _, body = await recorded.traced(request)(b'GET', 'http://a.example/')
        assert (body is content) == bool(options)
        await buffered(body)
        [(name, sent)] = request.made[0][2]['headers']
        assert (name, int(sent[-2:], 16) & trace.TraceFlags.SAMPLED) == (b'traceparent', 0)
        assert recorded.spans == []
        assert len(recorded.metrics()) == (0 if options else 1)


@on_one_loop
async def test_without_an_sdk_nothing_is_done_but_to_pass_on_the_context():
    remote = trace.SpanContext(1, 2, True, trace.TraceFlags(1))
    for telemetry in (Telemetry(), Telemetry(NoOpTracerProvider(), NoOpMeterProvider())):
        content = Content()
        request = answering(body=content)
        await telemetry.traced(request)(b'GET', 'http://a.example/')
        assert request.made.pop()[2]['headers'] == ()
        assert request.contexts == [{}]
        token = context.attach(trace.set_span_in_context(trace.NonRecordingSpan(remote)))
        answer = await telemetry.traced(request)(
            b'GET', 'http://a.example/', url_template='/', headers=iter(((b'a', b'b'),)))
        context.detach(token)
        assert answer == (b'200', (), content)
        assert request.made[0][2]['headers'] == (
            (b'a', b'b'), (b'traceparent', b'00-%032x-%016x-01' % (1, 2)))
        assert 'url_template' not in request.made[0][2]


@on_one_loop
async def test_an_sdk_may_be_set_later(monkeypatch):
    telemetry = Telemetry()
    recorded = Recorded()
    monkeypatch.setattr(trace, 'get_tracer_provider', lambda: recorded.tracer_provider)
    monkeypatch.setattr(metrics, 'get_meter_provider', lambda: recorded.meter_provider)
    content = Content()
    _, _, body = await telemetry.traced(answering(body=content))(b'GET', 'http://a.example/')
    assert body is not content


# ------------------------------------------------------------------------------- other layers

BUSY = response(503)


def led_to(url):
    return response(302, b'', b'location: ' + url)


@on_loops
async def test_innermost_each_request_of_a_call_is_a_span():
    recorded = Recorded()
    script = Answering(BUSY, led_to(b'/b'), BUSY, OK)
    async with Server(script) as server, pool() as request:
        request = counted(redirectable(retry(
            recorded.traced(request), code_intervals=((b'503', (0,)),))))
        with recorded.tracer.start_as_current_span('outside'):
            for _ in range(2):
                script.responses = [BUSY, led_to(b'/b'), BUSY, OK]
                await get(request, server.url + 'a', url_template='/{}')
    outside, *spans = recorded.spans
    assert [(parent_of(span), span.name, span.attributes['url.full'].removeprefix(server.url),
             span.attributes['http.response.status_code'],
             span.attributes.get('http.request.resend_count')) for span in spans] == [
        (outside.context.span_id, 'GET /{}', path, code, number) for path, code, number in [
            ('a', 503, None), ('a', 302, 1), ('b', 503, 2), ('b', 200, 3)] * 2]
    assert [value(sent, b'traceparent') for sent in script.heads] == list(map(traceparent, spans))
    assert sum(point.count for point in recorded.metrics()['http.client.request.duration']) == 8


@on_loops
async def test_outermost_a_call_is_one_span():
    recorded = Recorded()
    script = Answering(BUSY, led_to(b'/b'), OK)
    async with Server(script) as server, pool() as request:
        request = recorded.traced(redirectable(retry(
            request, code_intervals=((b'503', (0,)),))))
        await get(request, server.url + 'a')
    span = recorded.span
    assert span.attributes['url.full'] == server.url + 'a'
    assert span.attributes['http.response.status_code'] == 200
    assert 'http.request.resend_count' not in span.attributes
    assert [value(sent, b'traceparent') for sent in script.heads] == [traceparent(span)] * 3


@on_loops
async def test_outermost_and_innermost_the_former_is_the_parent_and_is_what_is_measured():
    recorded = Recorded()
    script = Answering(led_to(b'/b'), OK)
    async with Server(script) as server, pool() as request:
        request = counted(recorded.traced(counted(redirectable(recorded.traced(request)))))
        await get(request, server.url + 'a', url_template='/{}')
    outer, *spans = recorded.spans
    assert {parent_of(span) for span in spans} == {outer.context.span_id}
    assert [span.name for span in recorded.spans] == ['GET /{}'] * 3
    assert [span.attributes.get('http.request.resend_count') for span in recorded.spans] == [
        None, None, 1]
    # The server is told its parent once, and it is the nearest.
    assert [values_of(sent, b'traceparent') for sent in script.heads] == [
        [traceparent(span)] for span in spans]
    [point] = recorded.metrics()['http.client.request.duration']
    assert point.count == 1


@on_loops
async def test_a_request_that_a_body_makes_is_another_call():
    recorded = Recorded()
    async with Server(Answering(OK)) as server, pool() as request:
        request = counted(retry(recorded.traced(request)))

        async def copied():
            yield (await get(request, server.url + 'source'))[2]

        _, _, body = await request(
            b'PUT', server.url + 'copy', headers=of_length(2), body=copied)
        await buffered(body)
    put, got = recorded.spans
    assert (put.name, got.name, parent_of(got)) == ('PUT', 'GET', put.context.span_id)
    assert 'http.request.resend_count' not in got.attributes
    assert sum(point.count for point in recorded.metrics()['http.client.request.duration']) == 2


@on_loops
async def test_a_request_that_a_body_makes_by_another_pool_is_another_call():
    recorded = Recorded()
    async with Server(Answering(OK)) as server:
        async with (pool(on_event=recorded.telemetry.watcher()) as one,
                    pool(on_event=recorded.telemetry.watcher()) as other):
            source, copy = recorded.traced(one), recorded.traced(other)

            async def copied():
                yield (await get(source, server.url + 'source'))[2]

            _, _, body = await copy(
                b'PUT', server.url + 'copy', headers=of_length(2), body=copied,
                url_template='/copy')
            await buffered(body)
    put, got = recorded.spans
    assert (put.name, got.name, parent_of(got)) == ('PUT /copy', 'GET', put.context.span_id)
    assert sum(point.count for point in recorded.metrics()['http.client.request.duration']) == 2


@on_one_loop
async def test_another_traced_request_within_a_call_has_a_count_of_its_own():
    recorded = Recorded()
    other = recorded.traced(answering())

    def with_token(request):
        async def with_token_request(method, url, **kwargs):
            await other(b'POST', 'http://tokens.example/')
            return await request(method, url, **kwargs)

        return with_token_request

    await counted(with_token(recorded.traced(answering())))(b'GET', 'http://a.example/')
    await turns(2)
    assert [span.attributes.get('http.request.resend_count') for span in recorded.spans] == [
        None, None]


@on_one_loop
async def test_a_decompressed_body_is_traced_on_either_side():
    recorded = Recorded(experimental=True)
    content = b'\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xcb\xcf\x06\x00G\xdd\xdcy\x02\x00\x00\x00'
    answer = response(200, content, b'content-encoding: gzip')
    async with Server(Answering(answer)) as server:
        async with pool(on_event=recorded.telemetry.watcher()) as request:
            for stacked in (decompressed(recorded.traced(request)),
                            recorded.traced(decompressed(request))):
                assert (await get(stacked, server.url))[2] == b'ok'
    assert [span.attributes['http.response.body.size'] for span in recorded.spans] == [
        len(content)] * 2


@on_one_loop
async def test_many_requests_at_once_each_have_their_parent():
    recorded = Recorded(experimental=True)
    script = Answering(OK)
    telemetry = recorded.telemetry

    async def one(request, url, number):
        with recorded.tracer.start_as_current_span(f'task {number}'):
            await get(request, url, headers=((b'number', b'%d' % number),))

    async with Server(script) as server, pool(on_event=telemetry.watcher()) as request:
        request = recorded.traced(request)
        async with asyncio.TaskGroup() as group:
            for number in range(64):
                group.create_task(one(request, server.url, number))
    parents = {span.context.span_id: span.name for span in recorded.spans}
    sent = {value(sent, b'traceparent'): value(sent, b'number') for sent in script.heads}
    spans = [span for span in recorded.spans if span.name == 'GET']
    assert len(spans) == len(sent) == 64
    for span in spans:
        assert parents[parent_of(span)] == f'task {sent[traceparent(span)].decode()}'
    assert list(recorded.values('http.client.active_requests').values()) == [0]


# ---------------------------------------------------------------------------------- the pool


@on_loops
async def test_a_watched_pool_tells_the_peer_of_a_request_that_fails():
    recorded = Recorded()

    async def script(peer):
        await peer.read_head()

    async with Server(script) as server:
        async with pool(on_event=recorded.telemetry.watcher()) as request:
            await failure(request(b'GET', server.url))  # is not traced
            await failure(recorded.traced(request)(b'GET', server.url))
    attributes = recorded.span.attributes
    assert (attributes['network.peer.address'], attributes['network.peer.port']) == (
        '127.0.0.1', server.port)
    assert list(recorded.metrics()) == ['http.client.request.duration']


@on_loops
async def test_sizes_of_bodies_and_active_requests():
    recorded = Recorded(experimental=True)
    async with Server(Answering(OK)) as server:
        async with pool(on_event=recorded.telemetry.watcher()) as request:
            traced = recorded.traced(request)
            await get(traced, server.url)
            _, _, body = await traced(
                b'PUT', server.url, headers=of_length(3), body=streamed(b'abc'))
            assert recorded.values('http.client.active_requests') == {
                ('GET', '127.0.0.1', server.port): 0, ('PUT', '127.0.0.1', server.port): 1}
            await buffered(body)
    assert set(recorded.values('http.client.active_requests').values()) == {0}
    got, put = recorded.spans
    assert 'http.request.body.size' not in got.attributes
    assert got.attributes['http.response.body.size'] == 2
    assert put.attributes['http.request.body.size'] == 3
    labels = ('127.0.0.1', server.port, 200, '1.1')
    assert recorded.values('http.client.request.body.size') == {('PUT', *labels): 3}
    assert recorded.values('http.client.response.body.size') == {
        ('GET', *labels): 2, ('PUT', *labels): 2}


@on_loops
async def test_connections_are_active_or_idle_or_have_lasted():
    recorded = Recorded(experimental=True)

    def counts():
        return recorded.values('http.client.open_connections')

    active, idle = (('active', '127.0.0.1'), ('idle', '127.0.0.1'))
    async with Server(Answering(OK)) as server:
        active, idle = (*active, server.port), (*idle, server.port)
        watcher = recorded.telemetry.watcher()
        async with pool(on_event=watcher) as request:
            assert 'http.client.open_connections' not in recorded.metrics()
            bodies = [(await request(b'GET', server.url + path))[2] for path in 'ab']
            assert counts() == {active: 0, idle: 1}
            await asyncio.gather(*map(buffered, bodies))
            assert repr(watcher) == '<Watcher of 0 requests and 1 connections>'
        assert counts() == {active: 0, idle: 0}
        await turns(2)
        [point] = recorded.metrics()['http.client.connection.duration']
        assert (point.count, dict(point.attributes)) == (
            1, {'server.address': '127.0.0.1', 'server.port': server.port})
        assert point.explicit_bounds[-1] == 300


@on_loops
async def test_two_pools_are_counted_together():
    recorded = Recorded(experimental=True)
    async with Server(holding(head(b'content-length: 5'))) as server:
        async with (pool(on_event=recorded.telemetry.watcher()) as one,
                    pool(on_event=recorded.telemetry.watcher()) as other):
            bodies = [(await request(b'GET', server.url))[2] for request in (one, other)]
            assert list(recorded.values('http.client.open_connections').values()) == [2]
            for body in bodies:
                await body.aclose()


@on_one_loop
async def test_a_connection_that_never_served_a_request_is_none():
    recorded = Recorded(experimental=True)

    async def script(peer):
        await peer.send(b'no TLS')

    async with Server(script) as server:
        async with pool(on_event=recorded.telemetry.watcher(),
                        get_ssl_context=trusting) as request:
            error = await failure(recorded.traced(request)(
                b'GET', server.url.replace('http:', 'https:')))
    assert type(error) is HttpTlsError
    await turns(2)
    assert recorded.metrics().keys() == {
        'http.client.request.duration', 'http.client.active_requests'}


def steps_of(spans, parent):
    """Name and attributes of each child, and the name and the time of each event."""
    assert {parent_of(span) for span in spans} == {parent.context.span_id}
    for span in spans:
        assert parent.start_time <= span.start_time <= span.end_time <= parent.end_time
    return [(span.name, dict(span.attributes)) for span in spans], [
        event.name for event in parent.events]


@on_loops
async def test_the_steps_of_a_request_are_children_and_events():
    recorded = Recorded(with_steps=True)
    async with Server(Answering(OK), certified('a.example')) as server:
        async with pool(on_event=recorded.telemetry.watcher(), get_ssl_context=trusting,
                        get_dns_resolver=always('127.0.0.1'), max_connections=1) as request:
            request = recorded.traced(request)
            url = f'https://a.example:{server.port}/'
            _, _, body = await request(
                b'PUT', url, headers=of_length(3), body=streamed(b'abc'))
            await buffered(body)
            first, *children = recorded.spans
            steps, events = steps_of(children, first)
            await get(request, url)
    version, cipher = body.connection.tls_version, body.connection.cipher[0]
    assert steps == [
        ('DNS lookup', {'dns.question.name': 'a.example', 'dns.answers': ('127.0.0.1',)}),
        ('connect', {'network.peer.address': '127.0.0.1', 'network.peer.port': server.port}),
        ('TLS handshake', {'tls.resumed': False, 'tls.cipher': cipher,
                           'tls.protocol.version': version.removeprefix('TLSv')}),
    ]
    assert events == ['head sent', 'body sent', 'response started']
    times = [event.timestamp for event in first.events]
    assert children[-1].end_time <= times[0]
    assert times == sorted(times)
    # The second request has found a connection, and that it still leads to the host.
    [second] = [span for span in recorded.spans if span.name == 'GET']
    children = [span for span in recorded.spans if parent_of(span) == second.context.span_id]
    assert steps_of(children, second) == (steps[:1], ['head sent', 'response started'])


@on_loops
async def test_a_step_that_fails_is_an_error():
    recorded = Recorded(with_steps=True)

    async def script(peer):
        await peer.send(b'no TLS')

    async with Server(None) as closed, Server(script) as server:
        await closed.__aexit__(None, None, None)
        async with pool(on_event=recorded.telemetry.watcher(),
                        get_ssl_context=trusting) as request:
            for url in (closed.url, server.url.replace('http:', 'https:')):
                await failure(recorded.traced(request)(b'GET', url))
    refused, tried, not_tls, connected, handshake = recorded.spans
    assert [(span.name, span.attributes.get('error.type'))
            for span in (tried, connected, handshake)] == [
        ('connect', 'ConnectionRefusedError'), ('connect', None),
        ('TLS handshake', 'ssl.SSLError')]
    assert tried.status.status_code == StatusCode.ERROR
    assert 'tls.protocol.version' not in handshake.attributes
    assert dict(handshake.attributes).keys() == {'tls.resumed', 'error.type'}


@on_loops
async def test_a_wait_for_a_connection_is_a_step(tmp_path):
    recorded = Recorded(with_steps=True)
    async with unix_streams(Streams(), tmp_path) as (get_connection, _):
        async with pool(on_event=recorded.telemetry.watcher(), max_connections=1,
                        get_connection=get_connection) as request:
            request = recorded.traced(request)
            async with asyncio.TaskGroup() as group:
                for name in 'ab':
                    group.create_task(get(request, f'http://a.example/{name}'))
    assert sorted(span.name for span in recorded.spans) == [
        'GET', 'GET', 'connect', 'wait for a connection']
    [connect] = [span for span in recorded.spans if span.name == 'connect']
    assert dict(connect.attributes) == {'network.peer.address': str(tmp_path / 's')}


@on_one_loop
async def test_only_get_connection_may_know_the_peer():
    async def get_connection(scheme, host, port):
        raise OSError('no way')

    recorded = Recorded(with_steps=True)
    async with pool(on_event=recorded.telemetry.watcher(),
                    get_connection=get_connection) as request:
        await failure(recorded.traced(request)(b'GET', 'http://a.example/'))
    _, connect = recorded.spans
    assert dict(connect.attributes) == {'error.type': 'lowhaio.HttpConnectionError'}
    assert connect.status.description.endswith('no way')


# -------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize('options, message', [
    ({'known_methods': b'GET'}, "known_methods must be several bytes, got b'GET'"),
    ({'known_methods': ['GET']}, "known_methods must be several bytes, got ['GET']"),
    ({'redacted_params': 'sig'}, "redacted_params must be several str, got 'sig'"),
    ({'request_headers': ['a']}, "request_headers must be several bytes, got ['a']"),
    ({'response_headers': b'a'}, "response_headers must be several bytes, got b'a'"),
    ({'propagate_to': 'https://a.example:443'},
     "propagate_to must be a function or None, got 'https://a.example:443'"),
])
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(TypeError) as raised:
        Telemetry(**options)
    assert str(raised.value) == message


@pytest.mark.parametrize('layer', [Telemetry().traced, counted], ids=['traced', 'counted'])
def test_what_is_no_function_can_not_be_traced(layer):
    with pytest.raises(TypeError) as raised:
        layer(None)
    assert str(raised.value) == f'{layer.__name__} needs a function, got NoneType'


# -------------------------------------------------------------------- the README and setup.py


def test_the_distribution_has_the_version_of_the_module():
    text = pathlib.Path(__file__).with_name('setup.py').read_text()
    assert f"version='{lowhaio_opentelemetry.__version__}'," in text


BLOCKS = python_blocks(pathlib.Path(__file__).with_name('README.md'))


@pytest.mark.parametrize('block, responses', [
    pytest.param(block, row[1], id=row[0]) for block, row in zip(BLOCKS, [
        ('first', (OK,)),
        ('restricted', (OK,)),
        ('stacked', (response(503), led_to(b'/b'), OK)),
    ], strict=True)])
def test_a_block_of_the_readme_runs_as_it_stands(
        block, responses, capsys, monkeypatch):
    recorded = Recorded()
    monkeypatch.setattr(trace, 'get_tracer_provider', lambda: recorded.tracer_provider)
    script = Answering(*responses)
    with internet(script):
        run_block(block)
    assert capsys.readouterr().out == "b'200' b'ok'\n"
    assert [value(sent, b'traceparent') for sent in script.heads] == [
        traceparent(span) for span in recorded.spans if span.kind == SpanKind.CLIENT]
