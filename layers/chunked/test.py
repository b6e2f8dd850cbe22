"""Tests of lowhaio_chunked: the bytes that a server receives, and what h11 makes of them."""

import array
import asyncio
import contextlib
import gc
import hashlib
import pathlib
import string

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowhaio import HttpDataError, HttpError, buffered, streamed
from lowhaio_chunked import chunked
from tests.harness import (
    OK,
    Answering,
    Server,
    internet,
    on_loops,
    pool,
    python_blocks,
    response,
    run_block,
    turns,
)

CHUNKED = ((b'transfer-encoding', b'chunked'),)


def yielding(*chunks):
    async def body():
        for chunk in chunks:
            yield chunk

    return body


def run(coroutine):
    """Run a coroutine that never waits, which needs no loop."""
    with pytest.raises(StopIteration) as stopped:
        coroutine.send(None)
    return stopped.value.value


@contextlib.asynccontextmanager
async def posting(*responses):
    """Yield a function that posts a body, and the script that answers it."""
    script = Answering(*responses)
    async with Server(script) as server, pool() as request:
        yield lambda body, **kwargs: request(
            b'POST', server.url, headers=CHUNKED, body=body, **kwargs), script


@pytest.mark.parametrize('chunks, expected', [
    ((), b'0\r\n\r\n'),
    ((b'',), b'0\r\n\r\n'),
    ((b'', b''), b'0\r\n\r\n'),
    ((b'a',), b'1\r\na\r\n0\r\n\r\n'),
    ((b'abc', b'de'), b'3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n'),
    ((b'', b'abc', b'', b'', b'de', b''), b'3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n'),
    ((b'0\r\n\r\n',), b'5\r\n0\r\n\r\n\r\n0\r\n\r\n'),
    ((bytes(17),), b'11\r\n' + bytes(17) + b'\r\n0\r\n\r\n'),
    ((bytes(300000),), b'493e0\r\n' + bytes(300000) + b'\r\n0\r\n\r\n'),
    ((bytearray(b'a'), memoryview(b'b'), bytearray()), b'1\r\na\r\n1\r\nb\r\n0\r\n\r\n'),
    ((array.array('H', (1, 2)),), b'4\r\n\x01\x00\x02\x00\r\n0\r\n\r\n'),
])
@on_loops
async def test_each_chunk_is_sent_with_its_size_and_the_last_one_after_them(chunks, expected):
    async with posting(OK) as (post, script):
        for _ in range(2):
            _, _, body = await post(chunked(yielding(*chunks)))
            assert await buffered(body) == b'ok'
    assert script.bodies == [expected] * 2
    assert script.connections == [0, 0]


@on_loops
async def test_arguments_are_passed_to_the_body_function():
    async def body(*args, **kwargs):
        yield repr((args, kwargs)).encode()

    async with posting(OK) as (post, script):
        await post(chunked(body), body_args=(1, 2), body_kwargs={'a': 3})
    assert script.bodies == [b"12\r\n((1, 2), {'a': 3})\r\n0\r\n\r\n"]


@on_loops
async def test_chunks_are_sent_as_they_come():
    async def script(peer):
        await peer.read_head()
        for index in range(3):
            assert await peer.reader.readexactly(6) == b'1\r\n%d\r\n' % index
            seen[index].set()
        assert await peer.reader.readexactly(5) == b'0\r\n\r\n'
        await peer.send(OK)

    async def body():
        for index in range(3):
            yield b'%d' % index
            await seen[index].wait()

    seen = [asyncio.Event() for _ in range(3)]
    async with Server(script) as server, pool() as request:
        code, _, _ = await request(b'POST', server.url, headers=CHUNKED, body=chunked(body))
    assert code == b'200'


# ---------------------------------------------------------------------------------- trailers


@on_loops
async def test_trailers_are_asked_for_when_the_body_has_ended():
    digest = hashlib.md5()

    async def body():
        for chunk in (b'a', b'b'):
            digest.update(chunk)
            yield chunk

    def trailers():
        yield b'X-Sum', digest.hexdigest().encode()
        yield b'x-0ther9', b' \t a, b\xff'
        yield b'x-empty', b''

    async with posting(OK) as (post, script):
        await post(chunked(body, trailers=trailers))
    expected = hashlib.md5(b'ab').hexdigest().encode()
    assert script.bodies == [b'1\r\na\r\n1\r\nb\r\n0\r\nX-Sum: ' + expected
                             + b'\r\nx-0ther9:  \t a, b\xff\r\nx-empty: \r\n\r\n']


@pytest.mark.parametrize('field, message', [
    ((b'', b''), 'tokens as names'),
    ((b'a b', b''), 'tokens as names'),
    ((b'a:', b''), 'tokens as names'),
    ((b'a\r\nb', b''), 'tokens as names'),
    ((b'Content-Length', b'1'), 'none that tells of the framing'),
    ((b'transfer-encoding', b'x'), 'none that tells of the framing'),
    ((b'host', b'x'), 'none that tells of the framing'),
    ((b'trailer', b'x'), 'none that tells of the framing'),
    ((b'a', b'1\r\nb: 2'), 'control characters'),
    ((b'a', b'1\n'), 'control characters'),
    ((b'a', b'\x00'), 'control characters'),
    ((b'a', 'b'), 'string-like'),
    (('a', b'b'), 'string-like'),
    ((b'a',), 'unpack'),
])
@on_loops
async def test_bad_trailers_are_an_error_and_never_sent(field, message):
    async def script(peer):
        await peer.read_head()
        received.set_result(await peer.closed())

    received = asyncio.get_running_loop().create_future()
    async with Server(script) as server, pool() as request:
        with pytest.raises(HttpDataError, match=message):
            await request(b'POST', server.url, headers=CHUNKED,
                          body=chunked(streamed(b'a'), trailers=lambda: (field,)))
        assert await received == b'1\r\na\r\n'


# ---------------------------------------------------------------------------- what goes wrong


@on_loops
async def test_a_body_that_raises_has_no_last_chunk():
    async def script(peer):
        await peer.read_head()
        received.set_result(await peer.closed())

    async def body():
        yield b'a'
        raise KeyError('k')

    received = asyncio.get_running_loop().create_future()
    async with Server(script) as server, pool() as request:
        with pytest.raises(HttpDataError) as error:
            await request(b'POST', server.url, headers=CHUNKED, body=chunked(body))
        assert isinstance(error.value.__cause__, KeyError)
        assert await received == b'1\r\na\r\n'


def test_after_an_error_nothing_more_comes():
    async def body():
        raise KeyError
        yield

    chunks = chunked(body)()
    with pytest.raises(KeyError):
        chunks.__anext__().send(None)
    with pytest.raises(StopAsyncIteration):
        chunks.__anext__().send(None)


@pytest.mark.parametrize('chunk', ['text', 1, None])
@on_loops
async def test_what_is_no_bytes_is_an_error(chunk):
    async with posting(OK) as (post, _):
        with pytest.raises(HttpError, match='bytes-like object is required'):
            await post(chunked(yielding(chunk)))


@on_loops
async def test_what_returns_no_async_iterator_is_an_error():
    async with posting(OK) as (post, _):
        with pytest.raises(HttpError, match='must return an async iterator of bytes'):
            await post(chunked(lambda: [b'a']))


def test_the_repr_tells_whether_the_body_goes_on():
    chunks = chunked(yielding(b'hidden'))()
    run(anext(chunks))
    assert repr(chunks).startswith('<Chunks goes on of <')
    assert 'hidden' not in repr(chunks)
    run(anext(chunks))
    assert repr(chunks).startswith('<Chunks has ended of <')


@on_loops
async def test_an_early_response_closes_the_body():
    async def script(peer):
        await peer.read_head()
        await peer.send(response(413))
        await peer.closed()

    async def body():
        try:
            yield b'a'
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    closed = []
    async with Server(script) as server, pool() as request:
        code, _, _ = await request(b'POST', server.url, headers=CHUNKED, body=chunked(body))
        assert code == b'413'
        assert closed == [True]


@on_loops
async def test_cancellation_closes_the_body():
    async def script(peer):
        await peer.read_head()
        received.set_result(await peer.closed())

    async def body():
        try:
            yield b'a'
            waiting.set()
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    closed, waiting = [], asyncio.Event()
    received = asyncio.get_running_loop().create_future()
    async with Server(script) as server, pool() as request:
        task = asyncio.create_task(
            request(b'POST', server.url, headers=CHUNKED, body=chunked(body)))
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert closed == [True]
        assert await received == b'1\r\na\r\n'


def test_closed_it_yields_nothing_more():
    chunks = chunked(yielding(b'a', b'b'))()
    assert aiter(chunks) is chunks
    assert run(chunks.__anext__()) == b'1\r\na\r\n'
    run(chunks.aclose())
    with pytest.raises(StopAsyncIteration):
        chunks.__anext__().send(None)
    run(chunks.aclose())


def test_an_iterator_that_can_not_be_closed():
    class Iterator:
        def __aiter__(self):
            return self

        async def __anext__(self):
            return b'a'

    chunks = chunked(Iterator)()
    assert run(chunks.__anext__()) == b'1\r\na\r\n'
    run(chunks.aclose())
    with pytest.raises(StopAsyncIteration):
        chunks.__anext__().send(None)


@on_loops
async def test_never_begun_and_dropped_it_leaves_nothing():
    chunks = chunked(streamed(b'a'))()
    del chunks
    gc.collect()
    await turns(3)


@pytest.mark.parametrize('args, kwargs', [
    ((None,), {}),
    ((b'a',), {}),
    ((test_arguments_are_passed_to_the_body_function.__wrapped__,), {}),
    ((streamed(b''),), {'trailers': ()}),
    ((streamed(b''),), {'trailers': None}),
])
def test_a_bad_argument_fails_at_once(args, kwargs):
    with pytest.raises(TypeError, match='chunked needs functions'):
        chunked(*args, **kwargs)


# ------------------------------------------------------------------------------------- h11

TOKEN = "!#$%&'*+.^_`|~-" + string.digits + string.ascii_letters
PRINTABLE = st.characters(min_codepoint=0x20, max_codepoint=0x7e)
NAMES = st.text(TOKEN, max_size=9).map(lambda text: b'x' + text.encode())
VALUES = st.text(PRINTABLE, max_size=11).map(lambda text: text.strip().encode())


@settings(deadline=None, max_examples=100)
@given(chunks=st.lists(st.binary(max_size=40)), trailers=st.lists(st.tuples(NAMES, VALUES)))
def test_h11_decodes_what_was_encoded(chunks, trailers):
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b'POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n')
    assert isinstance(connection.next_event(), h11.Request)
    encoded = chunked(yielding(*chunks), trailers=lambda: trailers)()
    with contextlib.suppress(StopAsyncIteration):
        while True:
            connection.receive_data(run_once(encoded.__anext__()))
    decoded = b''
    while isinstance(event := connection.next_event(), h11.Data):
        decoded += event.data
    assert decoded == b''.join(chunks)
    assert isinstance(event, h11.EndOfMessage)
    assert event.headers == [(name.lower(), value) for name, value in trailers]
    assert connection.trailing_data == (b'', False)


def run_once(coroutine):
    try:
        coroutine.send(None)
    except StopIteration as stopped:
        return stopped.value


# -------------------------------------------------------------------------------- the README

BLOCKS = python_blocks(pathlib.Path(__file__).with_name('README.md'))
SUM = hashlib.sha256(b'ab').hexdigest().encode()


@pytest.mark.parametrize('block, expected', [
    pytest.param(block, expected, id=str(index)) for index, (block, expected) in enumerate(zip(
        BLOCKS, [b'6\r\nrow 0\n\r\n6\r\nrow 1\n\r\n6\r\nrow 2\n\r\n0\r\n\r\n',
                 b'1\r\na\r\n1\r\nb\r\n0\r\nx-sha256: ' + SUM + b'\r\n\r\n'], strict=True))])
def test_a_block_of_the_readme_runs_as_it_stands(block, expected, capsys):
    script = Answering(response(200, b'Hello'))
    with internet(script):
        run_block(block)
    assert capsys.readouterr().out == "b'200' b'Hello'\n"
    assert script.bodies == [expected]
