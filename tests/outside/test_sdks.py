"""The SDKs of language models on lowhaio: openai, anthropic, google-genai and mcp

Each test runs first on httpx2's own transport, and then on lowhaio's: what the SDK does must not
depend on it. Where the transports differ, the test says how.
"""

import asyncio
import concurrent.futures
import contextlib
import functools
import inspect
import io
import os
import re
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

if os.environ.get('CI') != 'true':
    for name in ('anthropic', 'google.genai', 'mcp', 'openai', 'opentelemetry.sdk',
                 'opentelemetry.instrumentation.httpx', 'pytest_httpx2', 'respx'):
        pytest.importorskip(name, reason=f'{name} is not installed')

import anthropic
import anyio
import httpx2
import mcp
import openai
import respx
import uvicorn
from google import genai
from google.genai import errors as genai_errors
from google.genai import types as genai_types
from mcp.client.streamable_http import streamable_http_client
from mcp.server.mcpserver import Context, MCPServer
from openai import _streaming_cleanup
from opentelemetry.instrumentation.httpx import HTTPX2ClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from lowhaio_httpx2 import (
    LowhaioTransport,
    client_for_anthropic,
    client_for_openai,
)
from tests.harness import (
    CLOCKED,
    LOOPS,
    PATIENCE,
    Server,
    cancelling,
    nothing_left,
    passing,
    run_on,
    turns,
    until,
    value,
)

sys.path.append(str(Path(__file__).parent))

from model_servers import (  # noqa: E402
    DONE,
    END,
    STREAM,
    Model,
    answer,
    chunk,
    completion,
    delta,
    event,
    generated,
    message,
    message_delta,
    message_end,
    message_start,
    named,
)

pytest_plugins = ['pytest_httpx2']

# The names of the attributes since 2023. OpenTelemetry reads this once in a process.
os.environ['OTEL_SEMCONV_STABILITY_OPT_IN'] = 'http'

PAGE = Path(__file__).parents[2] / 'docs' / 'sdks.md'
BLOCKS = re.findall(
    r'(?<=^```python\n).*?(?=^```$)', PAGE.read_text(encoding='utf-8'), re.MULTILINE | re.DOTALL)
# The class for respx, whose name may be given once in a process
exec(compile(next(block for block in BLOCKS if 'Mocker' in block), 'sdks.md', 'exec'))

# The system's authorities would be read for each transport
CONTEXT = httpx2.create_ssl_context()
TRANSPORTS = {
    'stock': functools.partial(httpx2.AsyncHTTPTransport, verify=CONTEXT),
    'lowhaio': functools.partial(LowhaioTransport, verify=CONTEXT),
}
QUESTION = {'model': 'a-model', 'messages': [{'role': 'user', 'content': 'What is it?'}]}


class Complaints:
    """Where those of a loop go, but for those of the SDKs: they leave the loops over their streams
    without closing their generators, and so the event loop makes tasks that do."""

    def __init__(self, errors):
        self.errors = errors

    def append(self, error):
        if not str(error).startswith('a task for <async_generator_athrow '):
            self.errors.append(error)


def on_kinds(test, kinds, transports=tuple(TRANSPORTS)):
    @pytest.mark.parametrize('transport', transports)
    @pytest.mark.parametrize('loop_name', kinds)
    @functools.wraps(test)
    def wrapper(*args, loop_name, **kwargs):
        with nothing_left() as errors:
            run_on(kinds[loop_name], loop_name, Complaints(errors), test, *args, **kwargs)

    signature = inspect.signature(test)
    wrapper.__signature__ = signature.replace(parameters=[
        *signature.parameters.values(),
        inspect.Parameter('loop_name', inspect.Parameter.KEYWORD_ONLY)])
    return wrapper


def on_both(test):
    """Run an async test function on each transport and each loop, and look at what it leaves."""
    return on_kinds(test, LOOPS)


def on_lowhaio(test):
    """The same, on lowhaio's transport only."""
    return on_kinds(test, LOOPS, ['lowhaio'])


def on_both_clocks(test):
    """The same, but time passes only in `passing`."""
    return on_kinds(test, CLOCKED)


# --------------------------------------------------------------------------------------- openai


@contextlib.asynccontextmanager
async def openai_of(transport, server, **options):
    http_client = openai.DefaultAsyncHttpxClient(transport=TRANSPORTS[transport]())
    async with openai.AsyncOpenAI(api_key='a-key', base_url=f'{server.origin}/v1',
                                  http_client=http_client, **options) as client:
        yield client


async def texts(stream):
    return [part.choices[0].delta.content async for part in stream]


@on_both
async def test_openai_completion(transport):
    model = Model(completion('one'), completion('two'))
    async with Server(model) as server, openai_of(transport, server) as client:
        for text in ('one', 'two'):
            answered = await client.chat.completions.create(**QUESTION)
            assert answered.choices[0].message.content == text
    assert [asked.line for asked in model.asked] == ['POST /v1/chat/completions'] * 2
    assert [asked.json for asked in model.asked] == [QUESTION] * 2
    assert b'authorization: bearer a-key\r\n' in model.asked[0].head.lower()
    assert model.connections == [0, 0]


@pytest.mark.parametrize('pieces', [
    [STREAM + delta('o') + delta('ne') + chunk(DONE) + END],
    [STREAM, delta('o'), delta('ne'), chunk(DONE), END],
    [STREAM, delta('o'), delta('ne'), chunk(DONE) + END],
    [STREAM, delta('o'), delta('ne') + chunk(DONE), END[:3], END[3:]],
], ids=['at once', 'each', 'end with the last', 'end in halves'])
@on_both
async def test_openai_stream_ends_with_its_body(transport, pieces, monkeypatch):
    """The SDK waits for the end of the body behind `[DONE]`, and only then the connection is used
    again. Were the end not told at once, this would wait for a minute."""
    monkeypatch.setattr(_streaming_cleanup, '_DRAIN_TIMEOUT', 2 * PATIENCE)

    async def stream(peer):
        await peer.send(*pieces)

    model = Model(stream)
    async with Server(model) as server, openai_of(transport, server) as client:
        for _ in range(3):
            async with await client.chat.completions.create(**QUESTION, stream=True) as parts:
                assert await texts(parts) == ['o', 'ne']
    assert model.connections == [0, 0, 0]


@on_both
async def test_openai_stream_without_an_end(transport):
    """A server that never ends the body costs 0.1 s and the connection, and nothing else."""
    closed = asyncio.Event()

    async def stream(peer):
        await peer.send(STREAM + delta('one') + chunk(DONE))
        assert await peer.closed() == b''
        closed.set()
        return False

    model = Model(stream, completion('two'))
    async with Server(model) as server, openai_of(transport, server) as client:
        parts = await client.chat.completions.create(**QUESTION, stream=True)
        assert await texts(parts) == ['one']
        await closed.wait()
        assert (await client.chat.completions.create(**QUESTION)).choices
    assert model.connections == [0, 1]


@on_both_clocks
async def test_openai_pings_keep_a_stream_alive(transport):
    """The time to read is that of each read: comments count, though the SDK shows none of them."""
    async def stream(peer):
        await peer.send(STREAM)
        for _ in range(10):
            await passing(0.9)
            await peer.send(chunk(b': ping\n\n'))
        await peer.send(delta('one') + chunk(DONE) + END)

    model = Model(stream)
    async with Server(model) as server, openai_of(transport, server, timeout=1) as client:
        async with await client.chat.completions.create(**QUESTION, stream=True) as parts:
            assert await texts(parts) == ['one']


@on_both
async def test_openai_upload(transport):
    content = bytes(range(256)) * 4096
    uploaded = {'id': 'file-1', 'object': 'file', 'bytes': len(content), 'created_at': 1,
                'filename': 'ä.bin', 'purpose': 'assistants', 'status': 'processed'}
    model = Model(answer(uploaded))
    async with Server(model) as server, openai_of(transport, server) as client:
        for file in content, io.BytesIO(content):
            answered = await client.files.create(file=('ä.bin', file), purpose='assistants')
            assert answered.bytes == len(content)
    for asked in model.asked:
        assert asked.line == 'POST /v1/files'
        assert b'\r\ncontent-type: multipart/form-data; boundary=' in asked.head.lower()
        assert asked.body.count(content) == 1
        assert b'name="purpose"\r\n\r\nassistants\r\n' in asked.body
    assert model.connections == [0, 0]


@pytest.mark.parametrize('code', [429, 500])
@on_both_clocks
async def test_openai_retries_what_the_server_refuses(transport, code):
    refusal = answer({'error': {'message': 'Later'}}, code, b'retry-after: 3')
    model = Model(refusal, refusal, completion('one'))
    async with Server(model) as server, openai_of(transport, server, max_retries=2) as client:
        task = asyncio.ensure_future(client.chat.completions.create(**QUESTION))
        for number in (1, 2):
            await until(lambda: len(model.asked) == number)  # noqa: B023
            await passing(2)
            assert len(model.asked) == number
            await passing(1.5)
        answered = await task
    assert answered.choices[0].message.content == 'one'
    assert [asked.json for asked in model.asked] == [QUESTION] * 3
    assert [value(asked.head, b'x-stainless-retry-count') for asked in model.asked] == [
        b'0', b'1', b'2']
    assert model.connections == [0, 0, 0]


@pytest.mark.parametrize('code, kind', [
    (400, openai.BadRequestError), (401, openai.AuthenticationError),
    (429, openai.RateLimitError), (500, openai.InternalServerError)])
@on_both
async def test_openai_errors_of_the_server(transport, code, kind):
    model = Model(answer({'error': {'message': 'No', 'code': 'no'}}, code, b'x-request-id: 7'))
    async with Server(model) as server, openai_of(transport, server, max_retries=0) as client:
        with pytest.raises(kind, match=f'^Error code: {code} - ') as raised:
            await client.chat.completions.create(**QUESTION)
    assert raised.value.code == 'no'
    assert raised.value.request_id == '7'


@on_both_clocks
async def test_openai_retries_after_a_time_out(transport):
    closed = asyncio.Event()

    async def silent(peer):
        assert await peer.closed() == b''
        closed.set()
        return False

    model = Model(silent, completion('one'))
    async with Server(model) as server, openai_of(
            transport, server, timeout=3, max_retries=1) as client:
        task = asyncio.ensure_future(client.chat.completions.create(**QUESTION))
        await until(lambda: model.asked)
        await passing(2.9)
        assert not closed.is_set()
        await passing(0.2)
        await closed.wait()
        await passing(1)  # it waits for half a second
        answered = await task
    assert answered.choices[0].message.content == 'one'
    assert model.connections == [0, 1]


# What a server does after the head and one part of a stream, and the error of httpx2 for it
async def close(peer):
    await peer.close()


async def reset(peer):
    peer.reset()


async def say_nonsense(peer):
    await peer.send(b'no length of a chunk\r\n')


FAULTS = {
    'closed': (close, httpx2.RemoteProtocolError),
    'reset': (reset, httpx2.ReadError),
    'nonsense': (say_nonsense, httpx2.RemoteProtocolError),
}


@pytest.mark.parametrize('fault', FAULTS)
@on_both
async def test_openai_fault_in_the_middle_of_a_stream(transport, fault):
    do, cause = FAULTS[fault]

    async def stream(peer):
        await peer.send(STREAM + delta('one'))
        await received.wait()
        await do(peer)
        return False

    received = asyncio.Event()
    async with Server(Model(stream)) as server, openai_of(transport, server) as client:
        parts = await client.chat.completions.create(**QUESTION, stream=True)
        assert (await anext(parts)).choices[0].delta.content == 'one'
        received.set()
        with pytest.raises(openai.APIConnectionError, match='^Connection error.$') as raised:
            await anext(parts)
        assert type(raised.value.__cause__) is cause
        assert raised.value.request.url == f'{server.origin}/v1/chat/completions'


@on_both_clocks
async def test_openai_silence_in_the_middle_of_a_stream(transport):
    async def stream(peer):
        await peer.send(STREAM + delta('one'))
        assert await peer.closed() == b''
        closed.set()
        return False

    closed = asyncio.Event()
    model = Model(stream)
    async with Server(model) as server, openai_of(transport, server, timeout=2) as client:
        parts = await client.chat.completions.create(**QUESTION, stream=True)
        assert (await anext(parts)).choices[0].delta.content == 'one'
        task = asyncio.ensure_future(anext(parts))
        await passing(1.9)
        assert not task.done()
        await passing(0.2)
        with pytest.raises(openai.APITimeoutError, match='^Request timed out.$') as raised:
            await task
        assert type(raised.value.__cause__) is httpx2.ReadTimeout
        await closed.wait()
    assert len(model.asked) == 1  # what has begun is not asked for again


@on_both
async def test_openai_nobody_listens(transport):
    async with Server(Model(b'')) as server:
        pass
    async with openai_of(transport, server, max_retries=0) as client:
        with pytest.raises(openai.APIConnectionError, match='^Connection error.$') as raised:
            await client.chat.completions.create(**QUESTION)
    assert type(raised.value.__cause__) is httpx2.ConnectError


@pytest.mark.parametrize('fault, cause', [
    (close, httpx2.RemoteProtocolError), (reset, httpx2.ReadError)])
@on_both
async def test_openai_fault_before_the_answer(transport, fault, cause):
    """Of a connection that has served before, too, it is asked again: as often as it may be."""
    async def hang_up(peer):
        await fault(peer)
        return False

    model = Model(completion('one'), hang_up)
    async with Server(model) as server, openai_of(transport, server, max_retries=0) as client:
        await client.chat.completions.create(**QUESTION)
        with pytest.raises(openai.APIConnectionError) as raised:
            await client.chat.completions.create(**QUESTION)
        assert type(raised.value.__cause__) is cause
    assert model.connections == [0, 0]


@on_both
async def test_openai_raw_responses(transport):
    streams = [STREAM + delta('one') + chunk(DONE) + END]
    model = Model(completion('one'), completion('two'), *streams, *streams, completion('five'))
    async with Server(model) as server, openai_of(transport, server) as client:
        completions = client.chat.completions
        raw = await completions.with_raw_response.create(**QUESTION)
        assert raw.http_response.extensions['http_version'] == b'HTTP/1.1'
        assert (raw.http_version, raw.http_response.reason_phrase) == ('HTTP/1.1', 'Reason')
        assert raw.headers['content-type'] == 'application/json'
        assert raw.parse().choices[0].message.content == 'one'

        async with completions.with_streaming_response.create(**QUESTION) as raw:
            assert (await raw.json())['choices'][0]['message']['content'] == 'two'
        async with completions.with_streaming_response.create(**QUESTION, stream=True) as raw:
            lines = [line async for line in raw.iter_lines()]
            assert lines[2:] == ['data: [DONE]', '']
        async with completions.with_streaming_response.create(**QUESTION, stream=True) as raw:
            assert b''.join([data async for data in raw.iter_bytes()]).endswith(DONE)
        assert (await completions.create(**QUESTION)).choices[0].message.content == 'five'
    assert model.connections == [0] * 5


@pytest.mark.parametrize('when', ['before the head', 'in the body'])
@on_both
async def test_openai_cancellation(transport, when):
    """The server sees the end of the connection, and the next request goes over another one."""
    async def stream(peer):
        if when == 'in the body':
            await peer.send(STREAM + delta('one'))
        waits.set()
        assert await peer.closed() == b''
        closed.set()
        return False

    async def ask():
        async with await client.chat.completions.create(**QUESTION, stream=True) as parts:
            async for part in parts:
                assert part.choices[0].delta.content == 'one'

    waits, closed = asyncio.Event(), asyncio.Event()
    model = Model(stream, completion('two'))
    async with Server(model) as server, openai_of(transport, server) as client:
        task = asyncio.ensure_future(ask())
        await waits.wait()
        await turns(20)
        task.cancel('a message')
        with pytest.raises(asyncio.CancelledError):
            await task
        await closed.wait()
        answered = await client.chat.completions.create(**QUESTION)
        assert answered.choices[0].message.content == 'two'
    assert model.connections == [0, 1]


@pytest.mark.parametrize('limit', [asyncio.timeout, anyio.fail_after])
@on_both_clocks
async def test_openai_time_limit_around_a_stream(transport, limit):
    async def stream(peer):
        await peer.send(STREAM + delta('one'))
        await passing(5)
        assert await peer.closed() == b''
        closed.set()
        return False

    closed = asyncio.Event()
    async with Server(Model(stream)) as server, openai_of(transport, server) as client:
        with pytest.raises(TimeoutError):
            async with contextlib.AsyncExitStack() as stack:
                block = limit(4)
                (stack.enter_context(block) if limit is anyio.fail_after
                 else await stack.enter_async_context(block))
                async with await client.chat.completions.create(**QUESTION, stream=True) as parts:
                    await texts(parts)
        assert cancelling() == 0
        await closed.wait()


@on_both
async def test_openai_stream_that_is_left(transport):
    """If all of a short rest is here, lowhaio's transport keeps the connection."""
    async def stream(peer):
        await peer.send(STREAM + delta('one') + delta('two') + chunk(DONE) + END)

    model = Model(stream, completion('three'))
    async with Server(model) as server, openai_of(transport, server) as client:
        async with await client.chat.completions.create(**QUESTION, stream=True) as parts:
            async for part in parts:
                assert part.choices[0].delta.content == 'one'
                break
        answered = await client.chat.completions.create(**QUESTION)
        assert answered.choices[0].message.content == 'three'
    assert model.connections == {'stock': [0, 1], 'lowhaio': [0, 0]}[transport]


@on_both
async def test_openai_stream_that_is_left_before_its_end(transport):
    """It closes its connection, though somebody still has the response."""
    async def stream(peer):
        await peer.send(STREAM + delta('one') + delta('two'))
        assert await peer.closed() == b''
        closed.set()
        return False

    closed = asyncio.Event()
    model = Model(stream)
    async with Server(model) as server, openai_of(transport, server) as client:
        async with await client.chat.completions.create(**QUESTION, stream=True) as parts:
            async for part in parts:
                assert part.choices[0].delta.content == 'one'
                break
        await closed.wait()
        assert parts.response.is_closed


@on_both
async def test_openai_a_hundred_at_once(transport):
    """None is answered until all have been asked, and then all connections are used again."""
    async def when_all_have_asked(peer):
        if len(model.asked) % 100 == 0:
            together.set()
        await together.wait()
        await peer.send(completion(str(len(model.asked))))

    together = asyncio.Event()
    model = Model(when_all_have_asked)
    async with Server(model) as server, openai_of(transport, server) as client:
        for _ in range(2):
            together.clear()
            answers = await asyncio.gather(*(
                client.chat.completions.create(**QUESTION) for _ in range(100)))
            assert len(answers) == 100
    assert sorted(model.connections[:100]) == list(range(100))


@on_both
async def test_openai_streams_at_once(transport):
    """Each reads its own."""
    async def stream(peer):
        number = int(model.asked[-1].json['user'])
        together.release()
        if number == 9:
            for _ in range(10):
                await together.acquire()
            begin.set()
        await begin.wait()
        await peer.send(STREAM, *[delta(f'{number}.{i}') for i in range(5)], chunk(DONE) + END)

    async def ask(number):
        parts = await client.chat.completions.create(**QUESTION, stream=True, user=str(number))
        assert await texts(parts) == [f'{number}.{i}' for i in range(5)]

    together, begin = asyncio.Semaphore(0), asyncio.Event()
    model = Model(stream)
    async with Server(model) as server, openai_of(transport, server) as client:
        async with asyncio.TaskGroup() as group:
            for number in range(10):
                group.create_task(ask(number))
    assert sorted(model.connections) == list(range(10))


# ----------------------------------------------------------------------- the clients for the SDKs


@pytest.mark.parametrize('make_client, sdk, make', [
    (client_for_openai, openai, openai.AsyncOpenAI),
    (client_for_anthropic, anthropic, anthropic.AsyncAnthropic)])
@on_lowhaio
async def test_defaults_are_those_of_the_sdk(transport, make_client, sdk, make):
    async with make_client(verify=CONTEXT) as client, make(
            api_key='a-key', http_client=client) as with_it, make(api_key='a-key') as without:
        assert with_it.timeout == without.timeout == sdk.DEFAULT_TIMEOUT == client.timeout
        assert with_it.max_retries == without.max_retries
        assert client.follow_redirects == without._client.follow_redirects


@on_lowhaio
async def test_limits_are_those_of_the_sdk(transport):
    """More than the hundred of httpx2 at once, and a hundred are kept."""
    async def when_all_have_asked(peer):
        if len(model.asked) == 130:
            together.set()
        await together.wait()
        await peer.send(completion('one'))

    together = asyncio.Event()
    model = Model(when_all_have_asked)
    async with Server(model) as server, openai.AsyncOpenAI(
            api_key='a-key', base_url=server.origin,
            http_client=client_for_openai(verify=CONTEXT)) as client:
        await asyncio.gather(*(client.chat.completions.create(**QUESTION) for _ in range(130)))
        assert sorted(model.connections) == list(range(130))
        await until(lambda: sum(peer.reader.at_eof() for peer in server.peers) == 30)
        assert (await client.chat.completions.create(**QUESTION)).choices
    assert model.connections[-1] < 130


@on_lowhaio
async def test_one_transport_for_two_sdks(transport):
    """When one of them closes it, what the other one reads goes on, and what it asks later."""
    async def stream(peer):
        await peer.send(STREAM + delta('one'))
        await closed.wait()
        await peer.send(delta('two') + chunk(DONE) + END)

    closed = asyncio.Event()
    model = Model(message('zero'), stream, completion('three'))
    http_client = functools.partial(httpx2.AsyncClient, transport=TRANSPORTS[transport]())
    async with Server(model) as server, openai.AsyncOpenAI(
            api_key='a-key', base_url=server.origin, http_client=http_client()) as client:
        async with anthropic.AsyncAnthropic(
                api_key='a-key', base_url=server.origin, http_client=http_client()) as other:
            assert (await other.messages.create(**PROMPT)).content[0].text == 'zero'
            parts = await client.chat.completions.create(**QUESTION, stream=True)
            assert (await anext(parts)).choices[0].delta.content == 'one'
        closed.set()
        assert await texts(parts) == ['two']
        answered = await client.chat.completions.create(**QUESTION)
        assert answered.choices[0].message.content == 'three'
    assert model.connections[:2] == [0, 0]


# ------------------------------------------------------------------------------------ anthropic


PROMPT = {**QUESTION, 'max_tokens': 10}


@contextlib.asynccontextmanager
async def anthropic_of(transport, server, **options):
    http_client = anthropic.DefaultAsyncHttpxClient(transport=TRANSPORTS[transport]())
    async with anthropic.AsyncAnthropic(api_key='a-key', base_url=server.origin,
                                        http_client=http_client, **options) as client:
        yield client


@on_both
async def test_anthropic_message(transport):
    model = Model(message('one'), answer({'type': 'error'}, 529, b'retry-after: 0.001'),
                  message('two'))
    async with Server(model) as server, anthropic_of(transport, server) as client:
        for text in ('one', 'two'):
            answered = await client.messages.create(**PROMPT)
            assert answered.content[0].text == text
    assert [asked.line for asked in model.asked] == ['POST /v1/messages'] * 3
    assert value(model.asked[0].head, b'authorization') == b'Bearer a-key'
    assert model.connections == [0, 0, 0]


@on_both
async def test_anthropic_stream(transport):
    async def stream(peer):
        await peer.send(STREAM + message_start(), message_delta('o'), named('ping'),
                        message_delta('ne'), message_end(), END)

    model = Model(stream)
    async with Server(model) as server, anthropic_of(transport, server) as client:
        async with client.messages.stream(**PROMPT) as parts:
            assert [text async for text in parts.text_stream] == ['o', 'ne']
            answered = await parts.get_final_message()
        assert (answered.content[0].text, answered.stop_reason) == ('one', 'end_turn')
        types = [part.type async for part in await client.messages.create(**PROMPT, stream=True)]
    assert types == [
        'message_start', 'content_block_start', 'content_block_delta', 'content_block_delta',
        'content_block_stop', 'message_delta', 'message_stop']
    assert model.connections == [0, 0]


@on_both
async def test_anthropic_error_in_a_stream(transport):
    """As an event, which the SDK makes an error of its own."""
    async def stream(peer):
        await peer.send(STREAM + message_start(), message_delta('one'), named(
            'error', error={'type': 'overloaded_error', 'message': 'Overloaded'}), END)

    async with Server(Model(stream)) as server, anthropic_of(transport, server) as client:
        async with client.messages.stream(**PROMPT) as parts:
            with pytest.raises(anthropic.APIStatusError, match='overloaded_error') as raised:
                await parts.get_final_message()
    assert raised.value.body['error']['message'] == 'Overloaded'


@pytest.mark.parametrize('fault', FAULTS)
@on_both
async def test_anthropic_fault_in_the_middle_of_a_stream(transport, fault):
    """The SDK hands out what the transport raises, so that has to be an error of httpx2."""
    do, kind = FAULTS[fault]

    async def stream(peer):
        await peer.send(STREAM + message_start() + message_delta('one'))
        await received.wait()
        await do(peer)
        return False

    received = asyncio.Event()
    async with Server(Model(stream)) as server, anthropic_of(transport, server) as client:
        async with client.messages.stream(**PROMPT) as parts:
            received_texts = parts.text_stream
            assert await anext(received_texts) == 'one'
            received.set()
            with pytest.raises(httpx2.TransportError) as raised:
                await anext(received_texts)
    assert type(raised.value) is kind


@on_both_clocks
async def test_anthropic_silence_in_the_middle_of_a_stream(transport):
    async def stream(peer):
        await peer.send(STREAM + message_start() + message_delta('one'))
        await passing(2.5)
        assert await peer.closed() == b''
        closed.set()
        return False

    closed = asyncio.Event()
    async with Server(Model(stream)) as server, anthropic_of(
            transport, server, timeout=2) as client:
        with pytest.raises(httpx2.ReadTimeout):
            async with client.messages.stream(**PROMPT) as parts:
                await parts.get_final_message()
        await closed.wait()


@on_both_clocks
async def test_anthropic_failures_before_the_answer(transport):
    async def silent(peer):
        await passing(2.5)
        assert await peer.closed() == b''
        return False

    async with Server(Model(silent)) as server, anthropic_of(
            transport, server, timeout=2, max_retries=0) as client:
        with pytest.raises(anthropic.APITimeoutError) as raised:
            await client.messages.create(**PROMPT)
        assert type(raised.value.__cause__) is httpx2.ReadTimeout
    async with anthropic_of(transport, server, max_retries=0) as client:
        with pytest.raises(anthropic.APIConnectionError) as raised:
            await client.messages.create(**PROMPT)
        assert type(raised.value.__cause__) is httpx2.ConnectError


# --------------------------------------------------------------------------------- google-genai


GENAI_QUESTION = {'model': 'a-model', 'contents': 'What is it?'}


@contextlib.asynccontextmanager
async def genai_of(transport, server, way='httpx_async_client', **options):
    """With aiohttp installed, google-genai uses that, unless it is given one of these."""
    made = TRANSPORTS[transport]()
    if way == 'httpx_async_client':
        given = {way: httpx2.AsyncClient(transport=made)}
    else:
        given = {way: {'transport': made}}
    client = genai.Client(api_key='a-key', http_options=genai_types.HttpOptions(
        base_url=server.origin, **given, **options))
    try:
        yield client.aio.models
    finally:
        await client.aio.aclose()  # which leaves open what it was given
        await made.aclose()
        client.close()


async def parts_of(models, **question):
    return [part.text async for part in await models.generate_content_stream(**question)]


@pytest.mark.parametrize('way', ['httpx_async_client', 'async_client_args'])
@on_both
async def test_genai(transport, way):
    async def stream(peer):
        await peer.send(STREAM, event(generated('o')), event(generated('ne')) + END)

    model = Model(answer(generated('one')), stream)
    async with Server(model) as server, genai_of(transport, server, way) as models:
        answered = await models.generate_content(**GENAI_QUESTION)
        assert answered.text == 'one'
        assert answered.sdk_http_response.headers['content-type'] == 'application/json'
        for _ in range(2):
            assert await parts_of(models, **GENAI_QUESTION) == ['o', 'ne']
    assert [asked.line for asked in model.asked] == [
        'POST /v1/models/a-model:generateContent',
        *['POST /v1/models/a-model:streamGenerateContent?alt=sse'] * 2]
    assert value(model.asked[0].head, b'x-goog-api-key') == b'a-key'
    assert model.connections == [0, 0, 0]


@on_both
async def test_genai_errors_of_the_server(transport):
    error = {'error': {'code': 429, 'message': 'Later', 'status': 'RESOURCE_EXHAUSTED'}}
    model = Model(answer(error, 429))
    async with Server(model) as server, genai_of(transport, server) as models:
        for ask in models.generate_content, functools.partial(parts_of, models):
            with pytest.raises(genai_errors.ClientError, match='^429 RESOURCE_EX') as raised:
                await ask(**GENAI_QUESTION)
            assert raised.value.message == 'Later'
    assert model.connections == [0, 0]


@pytest.mark.parametrize('fault', FAULTS)
@on_both
async def test_genai_fault_in_the_middle_of_a_stream(transport, fault):
    do, kind = FAULTS[fault]

    async def stream(peer):
        await peer.send(STREAM + event(generated('one')))
        await received.wait()
        await do(peer)
        return False

    received = asyncio.Event()
    async with Server(Model(stream)) as server, genai_of(transport, server) as models:
        parts = await models.generate_content_stream(**GENAI_QUESTION)
        assert (await anext(parts)).text == 'one'
        received.set()
        with pytest.raises(httpx2.TransportError) as raised:
            await anext(parts)
    assert type(raised.value) is kind


@on_both_clocks
async def test_genai_timeout(transport):
    async def silent(peer):
        await passing(1)
        assert await peer.closed() == b''
        return False

    model = Model(silent)
    async with Server(model) as server, genai_of(transport, server, timeout=500) as models:
        with pytest.raises(httpx2.ReadTimeout):
            await models.generate_content(**GENAI_QUESTION)


@on_both_clocks
async def test_genai_waits_for_ever(transport):
    """The timeout of the HTTP client, five seconds here, is not asked for."""
    async def slow(peer):
        await passing(10_000)
        await peer.send(answer(generated('one')))

    model = Model(slow)
    async with Server(model) as server, genai_of(transport, server) as models:
        assert (await models.generate_content(**GENAI_QUESTION)).text == 'one'


@on_both_clocks
async def test_genai_retries(transport):
    """What it retries are answers, and time-outs and failures to connect of httpx2."""
    async def silent(peer):
        assert await peer.closed() == b''
        return False

    model = Model(answer({'error': {}}, 503), silent, answer(generated('one')))
    options = {'timeout': 2000, 'retry_options': genai_types.HttpRetryOptions(
        attempts=3, initial_delay=1, max_delay=1, jitter=0)}
    async with Server(model) as server, genai_of(transport, server, **options) as models:
        task = asyncio.ensure_future(models.generate_content(**GENAI_QUESTION))
        while not task.done():
            await passing(0.5)
        assert (await task).text == 'one'
    assert model.connections == [0, 0, 1]


# ------------------------------------------------------------------------------------------ mcp


class Tools:
    """An MCP server under uvicorn, in a thread with a loop of its own"""

    def __init__(self, json_response):
        server = MCPServer('a server')

        @server.tool()
        def add(a: int, b: int) -> int:
            """Their sum."""
            return a + b

        @server.tool()
        async def count(ctx: Context) -> str:
            """Tells how far it is."""
            for i in range(3):
                await ctx.report_progress(i, 3)
            return 'done'

        self.json_response = json_response
        self.app = server.streamable_http_app(json_response=json_response)
        self.asked = []  # method and port of the client

    def __enter__(self):
        self.sock = socket.create_server(('127.0.0.1', 0))
        self.url = f'http://127.0.0.1:{self.sock.getsockname()[1]}/mcp'
        self.server = uvicorn.Server(uvicorn.Config(
            self.note_and_answer, interface='asgi3', http='h11', ws='none', log_config=None))
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            time.sleep(0.01)
        return self

    def __exit__(self, *exception):
        self.server.should_exit = True
        self.thread.join()
        self.sock.close()

    def run(self):
        async def serve():
            self.loop = asyncio.get_running_loop()
            await self.server.serve(sockets=[self.sock])

        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(serve())

    async def note_and_answer(self, scope, receive, send):
        if scope['type'] == 'http':
            self.asked.append((scope['method'], scope['client'][1]))
        await self.app(scope, receive, send)

    @property
    def connections(self):
        return self.server.server_state.connections

    async def hang_up_idle_connections(self):
        """As uvicorn does with those that have been idle for five seconds"""
        def of_posts():
            return {connection for connection in list(self.connections)
                    if connection.cycle and connection.cycle.scope['method'] == 'POST'}

        # The client may have its answer before the server has ended it
        await until(lambda: all(one.cycle.response_complete for one in of_posts()))
        idle = of_posts()
        for connection in idle:
            self.loop.call_soon_threadsafe(connection.timeout_keep_alive_handler)
        await until(lambda: not self.connections.intersection(idle))

    async def all_are_closed(self):
        await until(lambda: not self.connections)
        # uvicorn forgets a connection a moment before its socket is closed, in the same turn
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(turns(1), self.loop))


@pytest.fixture(scope='module', params=[False, True], ids=['events', 'json'])
def started_tools(request):
    with Tools(request.param) as tools:
        yield tools


@pytest.fixture
def tools(started_tools):
    started_tools.asked.clear()
    return started_tools


@contextlib.asynccontextmanager
async def mcp_of(transport, tools, mode):
    async with httpx2.AsyncClient(transport=TRANSPORTS[transport](), timeout=30) as http_client:
        streams = streamable_http_client(tools.url, http_client=http_client)
        async with mcp.Client(streams, mode=mode) as client:
            yield client
    await tools.all_are_closed()  # or their descriptors were left


@pytest.mark.parametrize('mode', ['legacy', 'auto'])
@on_both
async def test_mcp(transport, mode, tools):
    async def note(*args):
        progress.append(args[:2])

    progress = []
    async with mcp_of(transport, tools, mode) as client:
        listed = await client.list_tools()
        assert sorted(tool.name for tool in listed.tools) == ['add', 'count']
        added = await client.call_tool('add', {'a': 1, 'b': 2})
        assert added.structured_content == {'result': 3}
        counted = await client.call_tool('count', progress_callback=note)
        assert counted.content[0].text == 'done'
        failed = await client.call_tool('add', {'a': 1})
        assert failed.is_error
    assert progress == ([] if tools.json_response else [(0, 3), (1, 3), (2, 3)])
    # Of a session: it begins with two, has a stream for what the server says, and is ended
    assert sorted(method for method, _ in tools.asked) == (
        ['DELETE', 'GET', *['POST'] * 6] if mode == 'legacy' else ['POST'] * 5)


@pytest.mark.parametrize('mode', ['legacy', 'auto'])
@on_both
async def test_mcp_server_that_hangs_up_idle_connections(transport, mode, tools):
    """What was hung up is not used for a POST: the client would end with it, since a server may
    have acted on it."""
    async with mcp_of(transport, tools, mode) as client:
        for number in range(3):
            added = await client.call_tool('add', {'a': 1, 'b': number})
            assert added.structured_content == {'result': 1 + number}
            await tools.hang_up_idle_connections()
        posts = [port for method, port in tools.asked if method == 'POST']
        assert len(set(posts[-3:])) == 3


# -------------------------------------------------------------------------------- OpenTelemetry


@pytest.fixture
def spans():
    """What gives the spans that have ended, and what an instrumentor wants."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield exporter.get_finished_spans, provider
    provider.shutdown()


@on_both
async def test_opentelemetry_of_a_client(transport, spans):
    """`instrument_client` wraps the transport that the client has, whatever its class. The version
    of HTTP is that of the response's extensions."""
    get_spans, provider = spans
    model = Model(completion('one'), answer({'error': {}}, 400))
    async with Server(model) as server, openai_of(transport, server, max_retries=0) as client:
        HTTPX2ClientInstrumentor.instrument_client(client._client, tracer_provider=provider)
        await client.chat.completions.create(**QUESTION)
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.create(**QUESTION)
        HTTPX2ClientInstrumentor.uninstrument_client(client._client)
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.create(**QUESTION)
    asked, refused = get_spans()
    assert asked.name == 'POST'
    assert dict(asked.attributes) == {
        'http.request.method': 'POST', 'url.full': f'{server.origin}/v1/chat/completions',
        'server.address': '127.0.0.1', 'server.port': server.port,
        'network.peer.address': '127.0.0.1', 'network.peer.port': server.port,
        'network.protocol.version': '1.1', 'http.response.status_code': 200}
    assert refused.attributes['error.type'] == '400'
    # They are told to the server, which is asked a third time without
    assert [f'{span.context.span_id:016x}' for span in get_spans()] == [
        value(asked.head, b'traceparent').decode().split('-')[2] for asked in model.asked[:2]]
    assert value(model.asked[2].head, b'traceparent') is None


@on_both
async def test_opentelemetry_of_errors(transport, spans):
    get_spans, provider = spans
    async with Server(Model(b'')) as server:
        pass
    async with openai_of(transport, server, max_retries=0) as client:
        HTTPX2ClientInstrumentor.instrument_client(client._client, tracer_provider=provider)
        with pytest.raises(openai.APIConnectionError):
            await client.chat.completions.create(**QUESTION)
    [span] = get_spans()
    assert span.attributes['error.type'] == 'ConnectError'
    assert span.status.description.startswith('ConnectError: ')


@on_both
async def test_opentelemetry_of_all_clients(transport, spans):
    """`instrument` wraps httpx2's own transport only: it sees nothing of another one."""
    get_spans, provider = spans
    instrumentor = HTTPX2ClientInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    try:
        async with Server(Model(completion('one'))) as server:
            async with openai_of(transport, server) as client:
                await client.chat.completions.create(**QUESTION)
    finally:
        instrumentor.uninstrument()
    assert len(get_spans()) == (transport == 'stock')


# -------------------------------------------------------------------------------------- mocking


@pytest.mark.parametrize('using, replaced', [('httpcore2', 'stock'), ('lowhaio', 'lowhaio')])
@on_both
async def test_respx(transport, using, replaced):
    """pytest-httpx2 and respx replace the connections below httpx2's transport. Those of another
    transport need a mocker of their own. What is not replaced, goes to the server."""
    mocked = {'choices': [{'message': {'role': 'assistant', 'content': 'mocked'}}]}
    async with Server(Model(completion('served'))) as server:
        async with openai_of(transport, server) as client:
            with respx.mock(using=using, assert_all_called=False) as router:
                route = router.post(f'{server.origin}/v1/chat/completions').respond(json=mocked)
                answered = await client.chat.completions.create(**QUESTION)
            text = answered.choices[0].message.content
            assert (text, route.called) == (
                ('mocked', True) if transport == replaced else ('served', False))
            answered = await client.chat.completions.create(**QUESTION)
            assert answered.choices[0].message.content == 'served'


@on_both
async def test_fixture_of_pytest_httpx2(transport, httpx2_mock):
    """It is for httpx2's own transport, and for no other one beside it."""
    async with Server(Model(completion('served'))) as server:
        httpx2_mock.post(f'{server.origin}/v1/chat/completions').respond(text='mocked')
        for name in {'stock', transport}:
            async with httpx2.AsyncClient(transport=TRANSPORTS[name]()) as client:
                answered = await client.post(f'{server.origin}/v1/chat/completions')
                assert (answered.text == 'mocked') == (name == 'stock')


@on_lowhaio
async def test_mock_transport(transport):
    """httpx2's own takes the place of lowhaio's, and needs no package."""
    def respond(request):
        assert request.url.path == '/v1/chat/completions'
        return httpx2.Response(200, json={'choices': [{'message': {'content': 'mocked'}}]})

    http_client = client_for_openai(transport=httpx2.MockTransport(respond))
    async with openai.AsyncOpenAI(api_key='a-key', http_client=http_client) as client:
        answered = await client.chat.completions.create(**QUESTION)
    assert answered.choices[0].message.content == 'mocked'


# ------------------------------------------------------------------------- the blocks of the page


async def answer_to_any(peer):
    """As each of the three services, by the path."""
    asked = peer.model.asked[-1]
    if 'generateContent' in asked.line:
        await peer.send(answer(generated('hello')))
    elif asked.line.endswith('/messages'):
        await peer.send(STREAM + message_start() + message_delta('hello') + message_end() + END)
    elif asked.json.get('stream'):
        await peer.send(STREAM + delta('hello') + chunk(DONE) + END)
    else:
        await peer.send(completion('hello'))


@pytest.fixture
def models(monkeypatch):
    """A server of all models, on a loop in a thread, as the environment tells the SDKs."""
    def run():
        async def serve():
            async def script(peer):
                peer.model = model
                await model(peer)

            async with Server(script) as server:
                started.set_result((asyncio.get_running_loop(), over := asyncio.Event(), server))
                await over.wait()

        asyncio.run(serve())

    model = Model(answer_to_any)
    started = concurrent.futures.Future()
    thread = threading.Thread(target=run)
    thread.start()
    loop, over, server = started.result(PATIENCE)
    for name, path in {'OPENAI': '/v1', 'ANTHROPIC': '', 'GOOGLE_GEMINI': ''}.items():
        monkeypatch.setenv(f'{name}_BASE_URL', server.origin + path)
        monkeypatch.setenv(f'{name.removeprefix("GOOGLE_")}_API_KEY', 'a-key')
    yield model
    loop.call_soon_threadsafe(over.set)
    thread.join(PATIENCE)


PRINTED = ['hello', 'hello', 'hello', "['add', 'count']", '', 'hello']


def test_every_block_of_the_page_is_run():
    assert len(PRINTED) == len(BLOCKS)


@pytest.mark.parametrize('number', [
    number for number in range(len(PRINTED)) if 'Mocker' not in BLOCKS[number]])
def test_a_block_of_the_page_runs_as_it_stands(number, models, tools, capsys):
    block = BLOCKS[number].replace('http://localhost:8000/mcp', tools.url)
    exec(compile(block, 'sdks.md', 'exec'), {'__name__': '__main__'})
    assert capsys.readouterr().out == PRINTED[number] + '\n'
    assert len(models.asked) == ('localhost' not in BLOCKS[number])
