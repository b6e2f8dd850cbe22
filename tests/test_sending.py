"""Request bodies: what may be one, its length or coding, and how it is sent, ended and closed."""

import array
import asyncio
import contextlib
import functools
import re
import socket
import ssl
import threading
import types

import pytest

from lowhaio import HttpConnectionError, HttpDataError, HttpError, empty_async_iterator, streamed
from tests.harness import (
    AS_CHUNKS,
    LARGE,
    OK,
    PATIENCE,
    Answering,
    Body,
    Server,
    ThreadServer,
    Uploads,
    at,
    bound_to,
    cancelling,
    certificates_for_what_is_sent,
    deaf_server,
    failed,
    forever,
    get,
    of_length,
    on_clock,
    on_loops,
    on_loops_at_once,
    passing,
    pool,
    receive_head,
    run_until,
    small_sock,
    turns,
    until,
    yielding,
)


# ------------------------------------------------------------------------------ what a body may be


async def mutating():
    chunk = bytearray(b'a' * 70_000)
    yield chunk
    chunk[:] = b'b' * 30_000
    yield chunk
    chunk.clear()


class Chunks:
    """An async iterator that is no generator; `__anext__` is a coroutine function."""

    def __init__(self, *chunks):
        self.chunks = list(chunks)

    def __aiter__(self):
        return self

    def take(self):
        if not self.chunks:
            raise StopAsyncIteration
        return self.chunks.pop(0)

    async def __anext__(self):
        return self.take()


class LateChunks(Chunks):
    async def __anext__(self):
        await asyncio.sleep(0)
        return self.take()


class EndingOnce(Chunks):
    """May not be asked again after its end."""

    has_ended = False

    def take(self):
        assert not self.has_ended
        self.has_ended = not self.chunks
        return super().take()


class FutureChunks(Chunks):
    """`__anext__` returns a future, which is done, or is soon."""

    def __anext__(self):
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        is_soon = len(self.chunks) % 2
        try:
            result = functools.partial(future.set_result, self.take())
        except StopAsyncIteration as end:
            result = functools.partial(future.set_exception, end)
        if is_soon:
            loop.call_soon(result)
        else:
            result()
        return future


class EndingAtOnce(FutureChunks):
    """`__anext__` itself raises, as an `async for` understands too."""

    def __anext__(self):
        if not self.chunks:
            raise StopAsyncIteration
        return super().__anext__()


class GeneratorChunks(Chunks):
    """`__anext__` returns a generator that can be awaited."""

    @types.coroutine
    def __anext__(self):
        yield
        return self.take()


class IteratorChunks(Chunks):
    """`__anext__` returns an awaitable whose steps are those of a plain iterator."""

    def __anext__(self):
        chunks = self

        class Steps:
            def __await__(self):
                return self

            def __iter__(self):
                return self

            def __next__(self):
                raise StopIteration(chunks.take())

        return Steps()


class Iterable:
    """Not an iterator: its `__aiter__` makes one."""

    async def __aiter__(self):
        yield b'ab'
        yield b'c'


class NoIterator:
    def __aiter__(self):
        return iter(())


def with_arguments(*args, **kwargs):
    return yielding(*args, *kwargs.values())


# The `body`, what else is passed, and what the server gets.
BODIES = {
    'streamed': (streamed(b'abc'), {}, b'abc'),
    'streamed-empty': (streamed(b''), {}, b''),
    'none-given': (empty_async_iterator, {}, b''),
    'generator': (lambda: yielding(b'a', b'bc'), {}, b'abc'),
    'generator-of-nothing': (lambda: yielding(), {}, b''),
    'generator-of-nothing-later': (lambda: yielding(None), {}, b''),
    'waiting-first': (lambda: yielding(None, b'a', None, None, b'bc', None), {}, b'abc'),
    'waiting-later': (lambda: yielding(b'a', None, b'bc', None), {}, b'abc'),
    'empty-chunks': (lambda: yielding(b'', b'', b'a', b'', bytearray(), b'bc', b''), {}, b'abc'),
    'empty-chunks-later': (lambda: yielding(b'', None, b'', b'a', None, b'', b'bc'), {}, b'abc'),
    'only-empty-chunks': (lambda: yielding(b'', memoryview(b''), b''), {}, b''),
    'bytearrays': (lambda: yielding(bytearray(b'a'), None, bytearray(b'bc')), {}, b'abc'),
    'memoryviews': (lambda: yielding(memoryview(b'xaxbx')[1::2], memoryview(b'c')), {}, b'abc'),
    'arrays': (lambda: yielding(array.array('H', [0x6161]), array.array('I', [0x62626262])), {},
               b'aabbbb'),
    'one-chunk-again-and-again': (mutating, {}, b'a' * 70_000 + b'b' * 30_000),
    'large-chunk': (lambda: yielding(b'x' * 1_000_000), {}, b'x' * 1_000_000),
    'large-chunk-later': (lambda: yielding(None, b'x' * 1_000_000), {}, b'x' * 1_000_000),
    'chunk-of-64-kib': (lambda: yielding(b'x' * 65536, b'y'), {}, b'x' * 65536 + b'y'),
    'many-chunks': (lambda: yielding(*[b'ab'] * 1000), {}, b'ab' * 1000),
    'iterator': (lambda: Chunks(b'a', b'', b'bc'), {}, b'abc'),
    'iterator-of-nothing': (Chunks, {}, b''),
    'iterator-waiting': (lambda: LateChunks(b'a', b'', b'bc'), {}, b'abc'),
    'iterator-that-ends-once': (lambda: EndingOnce(b'a', b'bc'), {}, b'abc'),
    'iterator-of-nothing-that-ends-once': (EndingOnce, {}, b''),
    'futures': (lambda: FutureChunks(b'a', b'', b'bc'), {}, b'abc'),
    'futures-soon': (lambda: FutureChunks(b'a', b'b', b'', b'c'), {}, b'abc'),
    'future-of-nothing': (FutureChunks, {}, b''),
    'futures-and-an-end-at-once': (lambda: EndingAtOnce(b'a', b'bc'), {}, b'abc'),
    'iterable': (Iterable, {}, b'abc'),
    'args': (with_arguments, {'body_args': (b'a', b'bc')}, b'abc'),
    'args-in-a-list': (with_arguments, {'body_args': [b'a', b'bc']}, b'abc'),
    'kwargs': (with_arguments, {'body_kwargs': {'x': b'a', 'y': b'bc'}}, b'abc'),
    'kwargs-pairs': (with_arguments, {'body_kwargs': (('x', b'a'), ('y', b'bc'))}, b'abc'),
    'args-and-kwargs': (with_arguments, {'body_args': (b'a',), 'body_kwargs': (('y', b'bc'),)},
                        b'abc'),
}


@on_loops
async def test_a_body_is_the_chunks_that_its_function_yields():
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        for body, more, expected in BODIES.values():
            await request(b'PUT', server.url, headers=of_length(len(expected)), body=body,
                          **more)
    assert dict(zip(BODIES, script.bodies, strict=True)) == {
        name: expected for name, (_, _, expected) in BODIES.items()}
    # Each was sent whole, so all went over one connection.
    assert set(script.connections) == {0}


@pytest.mark.parametrize('body', [
    pytest.param(EndingAtOnce, id='the-end-at-once'),
    pytest.param(lambda: GeneratorChunks(b'abc'), id='generator'),
    pytest.param(lambda: IteratorChunks(b'abc'), id='plain-iterator'),
])
@on_loops
async def test_a_body_may_be_whatever_an_async_for_takes(body):
    expected = b''.join([chunk async for chunk in body()])
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        await request(b'PUT', server.url, headers=of_length(len(expected)), body=body)
    assert script.bodies == [expected]


@on_loops
async def test_a_body_coded_by_the_caller_is_sent_as_it_is():
    heads, bodies = [], []

    async def script(peer):
        heads.append(await peer.read_head())
        bodies.append(await peer.reader.readuntil(b'\r\n0\r\n\r\n'))
        await peer.send(OK)
        heads.append(await peer.read_head())
        await peer.send(OK)

    async with Server(script) as server, pool() as request:
        await request(b'PUT', server.url, headers=((b'Transfer-Encoding', b'Chunked'),),
                      body=lambda: yielding(b'3\r\nabc', b'\r\n0\r\n', None, b'\r\n'))
        await request(b'GET', server.url)
        field = f'host: 127.0.0.1:{server.port}\r\n'.encode()
    assert heads == [b'PUT / HTTP/1.1\r\n' + field + b'Transfer-Encoding: Chunked\r\n\r\n',
                     b'GET / HTTP/1.1\r\n' + field + b'\r\n']
    assert bodies == [b'3\r\nabc\r\n0\r\n\r\n']
    assert len(server.peers) == 1


@on_loops
async def test_chunked_may_be_the_last_of_several_codings():
    async def script(peer):
        heads.append(await peer.read_head())
        await peer.reader.readuntil(b'0\r\n\r\n')
        await peer.send(OK)

    heads = []
    async with Server(script) as server, pool(keep_alive_timeout=0) as request:
        for value in (b'gzip, chunked', b'gzip,CHUNKED \t'):
            await request(b'PUT', server.url, headers=((b'transfer-encoding', value),),
                          body=streamed(b'0\r\n\r\n'))
            assert b'\r\ntransfer-encoding: ' + value + b'\r\n' in heads[-1]


NO_ITERATOR = ('body must return an async iterator of bytes, as an async function that yields '
               'does, got ')

NO_FUNCTION = ('body must be a function that returns an async iterator of bytes, as '
               'streamed(data) is, got ')

NO_BODIES = {
    'none': (None, NO_FUNCTION + 'NoneType'),
    'bytes': (b'abc', NO_FUNCTION + 'bytes'),
    'returns-none': (lambda: None, NO_ITERATOR + 'NoneType'),
    'returns-bytes': (lambda: b'abc', NO_ITERATOR + 'bytes'),
    'returns-list': (lambda: [b'abc'], NO_ITERATOR + 'list'),
    'returns-iterator': (lambda: iter([b'abc']), NO_ITERATOR + 'list_iterator'),
    'returns-coroutine': (forever, NO_ITERATOR + 'coroutine'),
    'returns-an-iterable-of-no-iterator': (NoIterator, ''),
    'wants-an-argument': (lambda a: yielding(a), ''),
}


@on_loops
async def test_a_body_that_is_no_function_of_an_async_iterator_is_a_connection_error():
    # A coroutine that is not closed would warn, when it is collected, that it was not awaited.
    for name, (body, text) in NO_BODIES.items():
        script = Uploads()
        async with Server(script) as server, pool() as request:
            with pytest.raises(HttpConnectionError) as caught:
                await request(b'PUT', server.url, headers=of_length(3), body=body)
            assert await script.body() is None
        assert type(caught.value) is HttpConnectionError
        assert type(caught.value.__cause__) is TypeError, name
        assert str(caught.value) == at(
            server, f'the request body: TypeError: {text or caught.value.__cause__}')


@pytest.mark.parametrize('chunk, kind', [
    ('c', 'str'), (5, 'int'), ([b'c'], 'list'),
    # What is false is no empty chunk.
    ('', 'str'), (0, 'int'), ([], 'list'), (None, 'NoneType'),
])
@on_loops
async def test_a_chunk_that_is_no_bytes_is_an_error(chunk, kind):
    async def body(*first):
        async for good in yielding(*first):
            yield good
        yield chunk

    for first, sent in (((), None), ((None,), b''), ((b'ab',), b'ab')):
        script = Uploads()
        async with Server(script) as server, pool() as request:
            with pytest.raises(HttpError) as caught:
                await request(b'PUT', server.url, headers=of_length(3), body=body,
                              body_args=first)
            assert await script.body() == sent
        assert type(caught.value) is (HttpDataError if first else HttpConnectionError)
        assert type(caught.value.__cause__) is TypeError
        assert str(caught.value) == at(server, 'the request body: TypeError: the body must '
                                       f'yield bytes, got {kind}')


NOTHING = ': it yielded nothing, as an iterator that was used before'
TOO_EARLY = 'the body ended too early, but transfer-encoding chunked needs its last chunk'


def not_chunked(expected):
    return ('the body must be encoded as transfer-encoding chunked says: expected '
            f'{expected}, but it yielded something else')


# What is declared, what the body yields (None: it waits), the error, and all that is sent.
WRONG_LENGTHS = {
    'nothing-for-something': (
        of_length(5), (), HttpConnectionError,
        'the body ended 5 bytes short of its content-length of 5' + NOTHING, None),
    'only-empty-chunks-for-something': (
        of_length(5), (b'', b''), HttpConnectionError,
        'the body ended 5 bytes short of its content-length of 5' + NOTHING, None),
    'nothing-later-for-something': (
        of_length(5), (None,), HttpDataError,
        'the body ended 5 bytes short of its content-length of 5' + NOTHING, b''),
    'too-few': (
        of_length(5), (b'ab', b'cd'), HttpDataError,
        'the body ended 1 bytes short of its content-length of 5', b'abcd'),
    'too-few-later': (
        of_length(5), (b'ab', None), HttpDataError,
        'the body ended 3 bytes short of its content-length of 5', b'ab'),
    'too-many-in-the-first-chunk': (
        of_length(1), (b'abc',), HttpConnectionError,
        'the body yielded more than its content-length of 1', None),
    'too-many-in-the-first-chunk-after-a-wait': (
        of_length(1), (None, b'abc'), HttpDataError,
        'the body yielded more than its content-length of 1', b''),
    'too-many-in-a-later-chunk': (
        of_length(3), (b'ab', b'cd'), HttpDataError,
        'the body yielded more than its content-length of 3', b'ab'),
    'one-chunk-too-many': (
        of_length(2), (b'ab', b'', b'c'), HttpDataError,
        'the body yielded more than its content-length of 2', b'ab'),
    'one-large-chunk-too-many': (
        of_length(2), (b'ab', None, b'c' * 100_000), HttpDataError,
        'the body yielded more than its content-length of 2', b'ab'),
    'something-for-zero': (
        of_length(0), (b'a',), HttpConnectionError,
        'the body yielded more than its content-length of 0', None),
    'something-for-nothing': (
        (), (b'a',), HttpConnectionError,
        'the body yielded bytes, but headers has no content-length or transfer-encoding', None),
    'something-for-nothing-later': (
        (), (None, b'a'), HttpDataError,
        'the body yielded bytes, but headers has no content-length or transfer-encoding', b''),
    'nothing-for-a-coding': (
        ((b'transfer-encoding', b'chunked'),), (), HttpConnectionError,
        'the body ended without a byte, but transfer-encoding chunked needs its last chunk',
        None),
    'nothing-for-a-coding-later': (
        ((b'transfer-encoding', b'chunked'),), (None, b''), HttpDataError,
        'the body ended without a byte, but transfer-encoding chunked needs its last chunk',
        b''),
    'content-for-a-coding': (
        AS_CHUNKS, (b'hello',), HttpConnectionError, not_chunked('a chunk-size line'), None),
    'content-for-a-coding-that-begins-like-a-chunk': (
        AS_CHUNKS, (b'bad', b' idea\r\n'), HttpDataError, not_chunked('a chunk-size line'),
        b'bad'),
    'a-request-for-a-coding': (
        AS_CHUNKS, (b'0\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n',), HttpConnectionError,
        not_chunked('nothing after the last chunk'), None),
    'a-request-after-a-coding': (
        AS_CHUNKS, (b'2\r\nok\r\n', b'0\r\n\r\n', b'', b'GET / HTTP/1.1\r\n'), HttpDataError,
        not_chunked('nothing after the last chunk'), b'2\r\nok\r\n0\r\n\r\n'),
    'a-coding-without-its-end': (
        AS_CHUNKS, (b'2\r\nok\r\n',), HttpDataError, TOO_EARLY, b'2\r\nok\r\n'),
    'a-coding-without-its-end-later': (
        AS_CHUNKS, (None, b'2\r\nok\r\n0\r\na: b\r\n'), HttpDataError, TOO_EARLY,
        b'2\r\nok\r\n0\r\na: b\r\n'),
    'an-error-at-once': (
        of_length(3), (LookupError('why'),), HttpConnectionError, 'LookupError: why', None),
    'an-error-after-a-wait': (
        of_length(3), (None, LookupError('why')), HttpDataError, 'LookupError: why', b''),
    'an-error-after-a-chunk': (
        of_length(3), (b'ab', LookupError('why')), HttpDataError, 'LookupError: why', b'ab'),
    'an-error-without-text': (
        of_length(3), (LookupError(),), HttpConnectionError, 'LookupError', None),
}


@on_loops
async def test_a_body_that_is_not_what_was_declared_is_an_error_and_its_excess_is_not_sent():
    results, expected = {}, {}
    for name, (headers, chunks, kind, text, sent) in WRONG_LENGTHS.items():
        script = Uploads()
        async with Server(script) as server, pool() as request:
            with pytest.raises(HttpError) as caught:
                await request(b'PUT', server.url, headers=headers, body=yielding,
                              body_args=chunks)
            error = caught.value
            raised = [chunk for chunk in chunks if isinstance(chunk, Exception)]
            results[name] = (type(error), str(error), type(error.__cause__),
                             error.__cause__ in raised, error.reused, error.response_started,
                             await script.body())
            expected[name] = (kind, at(server, f'the request body: {text}'),
                              type(raised[0]) if raised else ValueError,
                              bool(raised), False, False, sent)
    assert results == expected


# Bodies that are encoded, and those that are not: what was expected in place of what came, or None
# if they end too early.
CODED_BODIES = {
    'a chunk': b'5\r\nhello\r\n0\r\n\r\n',
    'chunks': b'2\r\nok\r\nA\r\n0123456789\r\n00\r\n\r\n',
    'no chunk': b'0\r\n\r\n',
    'a size of 16 digits': b'0000000000000002\r\nok\r\n0000000000000000\r\n\r\n',
    'content that looks like framing': b'9\r\n\r\n0\r\n\r\n\r\n\r\n0\r\n\r\n',
    'extensions': b'2;a\r\nok\r\n0;b="c d";e=\x80\r\n\r\n',
    'trailers': b'2\r\nok\r\n0\r\na: b\r\nX-C:\td \r\ne:\r\n\r\n',
}

SIZE, CRLF, TRAILER = 'a chunk-size line', 'CRLF after the chunk', 'a trailer or the empty line'
AFTER = 'nothing after the last chunk'

NOT_CODED_BODIES = {
    'no size': (b'\r\nok\r\n0\r\n\r\n', SIZE),
    'a size that is not hex': (b'0x2\r\nok\r\n0\r\n\r\n', SIZE),
    'a size with a sign': (b'+2\r\nok\r\n0\r\n\r\n', SIZE),
    'a size of 17 digits': (b'00000000000000002\r\nok\r\n0\r\n\r\n', SIZE),
    'a space after the size': (b'2 \r\nok\r\n0\r\n\r\n', SIZE),
    'a space before the size': (b' 2\r\nok\r\n0\r\n\r\n', SIZE),
    'LF after the size': (b'2\nok\r\n0\r\n\r\n', SIZE),
    'CR after the size': (b'2\rok\r\n0\r\n\r\n', SIZE),
    'NUL in an extension': (b'2;\0\r\nok\r\n0\r\n\r\n', SIZE),
    'CR in an extension': (b'2;a\rb\r\nok\r\n0\r\n\r\n', SIZE),
    'LF in an extension': (b'2;a\nb\r\nok\r\n0\r\n\r\n', SIZE),
    'content longer than the size': (b'2\r\nokay\r\n0\r\n\r\n', CRLF),
    'content shorter than the size': (b'4\r\nok\r\n0\r\n\r\n', CRLF),
    'LF after the content': (b'2\r\nok\n0\r\n\r\n', CRLF),
    'two CRLF after the content': (b'2\r\nok\r\n\r\n0\r\n\r\n', SIZE),
    'a second size that is none': (b'2\r\nok\r\nx\r\nok\r\n0\r\n\r\n', SIZE),
    'LF at the end': (b'2\r\nok\r\n0\r\n\n', TRAILER),
    'a trailer without a colon': (b'0\r\nab\r\n\r\n', TRAILER),
    'a space before the colon': (b'0\r\na : b\r\n\r\n', TRAILER),
    'a folded trailer': (b'0\r\na: b\r\n c\r\n\r\n', TRAILER),
    'LF after a trailer': (b'0\r\na: b\n\r\n', TRAILER),
    'NUL in a trailer': (b'0\r\na: \0\r\n\r\n', TRAILER),
    'CR in a trailer': (b'0\r\na: b\rc\r\n\r\n', TRAILER),
    'a line end after the end': (b'0\r\n\r\n\r\n', AFTER),
    'a second end': (b'2\r\nok\r\n0\r\n\r\n0\r\n\r\n', AFTER),
    'a chunk after the end': (b'0\r\n\r\n2\r\nok\r\n', AFTER),
    'an end in a size': (b'5', None),
    'an end in an extension': (b'5;a', None),
    'an end after a size': (b'5\r\n', None),
    'an end in the content': (b'5\r\nhel', None),
    'an end after the content': (b'5\r\nhello\r', None),
    'an end between chunks': (b'5\r\nhello\r\n', None),
    'an end after the last size': (b'5\r\nhello\r\n0\r\n', None),
    'an end in a trailer': (b'0\r\na: b', None),
    'an end in the name of a trailer': (b'0\r\na', None),
    'an end in the last line end': (b'0\r\na: b\r\n\r', None),
}

YIELDED = {
    'whole': lambda body: [body],
    'in bytes': lambda body: [body[index:index + 1] for index in range(len(body))],
    'in lines': re.compile(rb'[^\n]*\n|[^\n]+').findall,
    'in sevens': lambda body: [body[index:index + 7] for index in range(0, len(body), 7)],
}


@pytest.mark.parametrize('cut', YIELDED.values(), ids=YIELDED)
@on_loops
async def test_a_coded_body_is_sent_as_it_is(cut):
    async def script(peer):
        for body in CODED_BODIES.values():
            await peer.read_head()
            received.append(await peer.read(len(body)))
            await peer.send(OK)

    received = []
    async with Server(script) as server, pool() as request:
        for body in CODED_BODIES.values():
            await get(request, server.url, headers=AS_CHUNKS, body=yielding, body_args=cut(body))
        assert len(server.peers) == 1
    assert received == list(CODED_BODIES.values())


@on_loops
async def test_other_codings_may_be_before_chunked():
    async def script(peer):
        heads.append(await peer.read_head())
        assert await peer.read(5) == b'0\r\n\r\n'
        await peer.send(OK)

    heads = []
    values = [b'gzip, chunked', b' GZIP\t,\tCHUNKED ', b'a;b=c;d="e, chunked", chunked',
              b'a ; b = "\\"c" , chunked', b'chunkedx, x-chunked, chunked', b'identity,chunked']
    async with Server(script) as server:
        for value in values:
            async with pool() as request:
                await get(request, server.url, headers=((b'transfer-encoding', value),),
                          body=streamed(b'0\r\n\r\n'))
    assert [head.split(b'encoding: ')[1] for head in heads] == [
        value + b'\r\n\r\n' for value in values]


@pytest.mark.parametrize('cut', YIELDED.values(), ids=YIELDED)
@on_loops
async def test_a_body_that_is_not_coded_as_its_field_says_is_not_sent_to_its_end(cut):
    results, expected = {}, {}
    for name, (body, what) in NOT_CODED_BODIES.items():
        script = Uploads()
        chunks = cut(body)
        async with Server(script) as server, pool() as request:
            with pytest.raises(HttpError) as caught:
                await request(b'PUT', server.url, headers=AS_CHUNKS, body=yielding,
                              body_args=chunks)
            sent = await script.body()
        text = TOO_EARLY if what is None else not_chunked(what)
        results[name] = str(caught.value), type(caught.value.__cause__)
        expected[name] = at(server, f'the request body: {text}'), ValueError
        # Nothing of the chunk that is wrong is sent.
        assert sent is None if what and len(chunks) == 1 else body.startswith(sent or b'')
        assert what is None or sent != body
    assert results == expected


@on_loops
async def test_a_line_of_a_coded_body_that_does_not_end_is_an_error():
    async with Server(Uploads()) as server, pool() as request:
        with pytest.raises(HttpDataError) as caught:
            await request(b'PUT', server.url, headers=AS_CHUNKS, body=yielding,
                          body_args=[b'2;', *[b'a' * 1024] * 20])
    assert str(caught.value) == at(server, f'the request body: {not_chunked(SIZE)}')


@pytest.mark.parametrize('error', [
    ConnectionResetError('why'), BrokenPipeError('why'), EOFError('why')])
@on_loops
async def test_a_body_that_fails_on_a_connection_of_its_own_is_no_end_of_ours(error):
    async with Server(Uploads()) as server, pool() as request:
        with pytest.raises(HttpDataError) as caught:
            await request(b'PUT', server.url, headers=of_length(3), body=yielding,
                          body_args=(b'ab', error))
    assert caught.value.__cause__ is error
    assert type(caught.value) is HttpDataError


@on_loops
async def test_a_body_that_fails_before_a_byte_is_sent_costs_a_reused_connection():
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        await get(request, server.url)
        with pytest.raises(HttpConnectionError) as caught:
            await request(b'PUT', server.url, headers=of_length(1))
        assert str(caught.value) == at(
            server, 'the request body: the body ended 1 bytes short of its content-length of 1'
            + NOTHING)
        assert (caught.value.reused, caught.value.response_started) == (True, False)
        await get(request, server.url)
    assert script.connections == [0, 1]


# ----------------------------------------------------------------------------------------- sending


class Connected(socket.socket):
    """One end of a pair, which is connected already."""

    def connect(self, address):
        pass


# What the body yields, and what the server reads; H is the head.
READS = {
    'no-body': ((), [b'H']),
    'one-chunk': ((b'abc',), [b'Habc']),
    'after-an-empty-chunk': ((b'', b'abc'), [b'Habc']),
    'two-chunks': ((b'abc', b'def'), [b'Habcdef']),
    'an-empty-chunk-between': ((b'abc', b'', b'def'), [b'Habcdef']),
    'a-wait-between': ((bytearray(b'abc'), None, b'def'), [b'Habc', b'def']),
    'waits-between-several': (
        (b'a', b'b', None, None, b'c', b'', b'd', None, b'e', b'f'), [b'Hab', b'cd', b'ef']),
    'a-wait-before': ((None, b'abc'), [b'H', b'abc']),
    'a-wait-at-the-end': ((b'abc', b'def', None), [b'Habcdef']),
    'just-less-than-64-kib': ((b'x' * 65535, None, b'y'), [b'H' + b'x' * 65535, b'y']),
    '64-kib': ((b'x' * 65536,), [b'H' + b'x' * 65536]),
    'more-than-64-kib': ((b'x' * 65537,), [b'H' + b'x' * 65536, b'x']),
    '64-kib-in-chunks': ((*[b'x' * 1024] * 64, b'y'), [b'H' + b'x' * 65536, b'y']),
    'tiny-chunks': ((b'x',) * 300, [b'H' + b'x' * 256, b'x' * 44]),
    'a-chunk-that-makes-it-more-than-64-kib': (
        (b'abc', b'x' * 65535, b'd'), [b'Habc' + b'x' * 65535, b'd']),
    'a-large-chunk-behind-others': (
        (b'abc', b'x' * 65537, b'd'), [b'Habc' + b'x' * 65536, b'x', b'd']),
}


@on_loops
async def test_the_head_and_a_first_chunk_that_is_there_arrive_in_one_read():
    results, expected = {}, {}
    loop = asyncio.get_running_loop()

    async def server(sock, number):
        received = [await loop.sock_recv(sock, 2 ** 20) for _ in range(number)]
        await loop.sock_sendall(sock, OK)
        return received

    for name, (chunks, reads) in READS.items():
        # Of a datagram socket one read returns what one send sent.
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        theirs.setblocking(False)
        length = sum(len(chunk) for chunk in chunks if chunk is not None)
        head = b'PUT / HTTP/1.1\r\nhost: 192.0.2.1\r\ncontent-length: %d\r\n\r\n' % length
        expected[name] = [read.replace(b'H', head) for read in reads]
        with theirs, Connected(fileno=ours.detach()) as sock:
            async with pool(get_sock=lambda family, sock=sock: sock) as request:
                results[name], _ = await asyncio.gather(
                    server(theirs, len(reads)),
                    request(b'PUT', 'http://192.0.2.1/', headers=of_length(length),
                            body=yielding, body_args=chunks))
    assert results == expected


@pytest.mark.parametrize('version', [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3],
                         ids=['1.2', '1.3'])
@on_loops
async def test_the_head_and_a_first_chunk_that_is_there_arrive_in_one_record_of_tls(version):
    server_context, client_context, _ = certificates_for_what_is_sent()
    lengths = []  # of the records from the client

    async def forward(peer):
        reader, writer = await asyncio.open_connection('127.0.0.1', tls_server.port)

        async def back():
            while data := await reader.read(65536):
                await peer.send(data)

        backwards = asyncio.create_task(back())
        try:
            while True:
                header = await peer.read(5)
                record = await peer.read(int.from_bytes(header[3:], 'big'))
                lengths.append(len(record))
                writer.write(header + record)
        finally:
            backwards.cancel()
            writer.transport.abort()

    client_context.maximum_version = version
    script = Answering(OK)
    try:
        async with Server(script, server_context) as tls_server, Server(forward) as forwarder, \
                pool(get_ssl_context=lambda: client_context) as request:
            url = f'https://127.0.0.1:{forwarder.port}/'
            await get(request, url)
            lengths.clear()  # those of the handshake, and of the first request
            await request(b'PUT', url, headers=of_length(3), body=streamed(b'abc'))
            assert len(lengths) == 1
            assert lengths[0] > len(script.heads[-1]) + 3
            await request(b'PUT', url, headers=of_length(3), body=lambda: yielding(None, b'abc'))
            assert len(lengths) == 3
            await request(b'PUT', url, headers=of_length(3),
                          body=lambda: yielding(b'a', b'b', b'c'))
            assert len(lengths) == 4
            # They leave with the head, in as few records as there can be.
            await request(b'PUT', url, headers=of_length(65536),
                          body=lambda: yielding(*[b'x' * 1024] * 64))
            assert len(lengths) == 4 + 5
            assert script.bodies == [b'', b'abc', b'abc', b'abc', b'x' * 65536]
            assert script.connections == [0] * 5
    finally:
        client_context.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED


# What leaves in one send before the error, and the error.
UNTIL_AN_ERROR = {
    'it-raises': ((b'a', b'b', LookupError('why')), of_length(3), b'ab', 'LookupError: why'),
    'it-waits-and-raises': (
        (b'a', None, b'b', LookupError('why')), of_length(3), b'b', 'LookupError: why'),
    'no-bytes': ((b'a', b'b', 5), of_length(3), b'ab',
                 'TypeError: the body must yield bytes, got int'),
    'too-many-bytes': ((b'a', b'b', b'cd'), of_length(3), b'ab',
                       'the body yielded more than its content-length of 3'),
    'too-few-bytes': ((b'a', b'b'), of_length(3), b'ab',
                      'the body ended 1 bytes short of its content-length of 3'),
    'no-chunk': ((b'1\r\na\r\n', b'1\r\nb\r\n', b'z'), AS_CHUNKS, b'1\r\na\r\n1\r\nb\r\n',
                 'the body must be encoded as transfer-encoding chunked says: expected a '
                 'chunk-size line, but it yielded something else'),
}


@pytest.mark.parametrize('name', UNTIL_AN_ERROR)
@on_loops_at_once
async def test_what_was_yielded_before_an_error_of_the_body_leaves_before_it_in_one_send(name):
    chunks, headers, expected, text = UNTIL_AN_ERROR[name]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with theirs, Connected(fileno=ours.detach()) as sock:
        async with pool(get_sock=lambda family: sock) as request:
            with pytest.raises(HttpDataError) as caught:
                await request(b'PUT', 'http://192.0.2.1/', headers=headers, body=yielding,
                              body_args=chunks)
        theirs.setblocking(False)
        reads = []
        with contextlib.suppress(OSError):
            while read := theirs.recv(2 ** 20):
                reads.append(read)
    assert str(caught.value).endswith(f', the request body: {text}')
    head, end, first = reads[0].partition(b'\r\n\r\n')
    assert (head[:3], end, [first, *reads[1:]][-1]) == (b'PUT', b'\r\n\r\n', expected)
    assert len(reads) == 1 + chunks.count(None)


@on_loops
async def test_chunks_of_the_chunked_coding_arrive_in_one_read_as_they_were_yielded():
    chunks = (b'1\r\na\r\n', b'2\r\nbc\r\n', b'0\r\n\r\n')
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    theirs.setblocking(False)
    loop = asyncio.get_running_loop()

    async def server():
        received = await loop.sock_recv(theirs, 2 ** 20)
        await loop.sock_sendall(theirs, OK)
        return received

    with theirs, Connected(fileno=ours.detach()) as sock:
        async with pool(get_sock=lambda family: sock) as request:
            received, _ = await asyncio.gather(server(), request(
                b'PUT', 'http://192.0.2.1/', headers=AS_CHUNKS, body=yielding, body_args=chunks))
    assert received.partition(b'\r\n\r\n')[2] == b''.join(chunks)


@on_loops_at_once
async def test_64_kib_of_small_chunks_leave_before_the_body_is_asked_again():
    def script(sock):
        receive_head(sock)
        left = 65536
        while left:
            left -= len(sock.recv(left))
        arrived.set()
        assert sock.recv(1) == b'y'
        sock.sendall(OK)

    async def body():
        for _ in range(64):
            yield b'x' * 1024
        # This keeps the loop from its turns.
        assert arrived.wait(PATIENCE)
        yield b'y'

    arrived = threading.Event()
    with ThreadServer(script) as server:
        async with pool() as request:
            code, _, _ = await request(b'PUT', server.url, headers=of_length(65537), body=body)
    assert code == b'200'


@pytest.mark.parametrize('size', [1024, 1025, 65536, 10])
@on_loops_at_once
async def test_a_body_is_not_asked_for_more_than_64_kib_once_a_final_response_has_come(size):
    def script(sock):
        receive_head(sock)
        sock.sendall(b'HTTP/1.1 413 No\r\ncontent-length: 0\r\n\r\n')
        answered.set()
        while sock.recv(65536):
            pass

    async def body():
        nonlocal asked_for
        yield b'x'
        await asyncio.sleep(0)
        # This keeps the loop from its turns, so the response is seen later.
        go_on.set()
        assert answered.wait(PATIENCE)
        while True:
            asked_for += size
            yield b'x' * size

    asked_for = 0
    go_on, answered = threading.Event(), threading.Event()

    def script_that_waits(sock):
        assert go_on.wait(PATIENCE)
        script(sock)

    with ThreadServer(script_that_waits) as server:
        async with pool() as request:
            code, _, response = await request(
                b'PUT', server.url, headers=of_length(10 ** 8), body=body)
    assert (code, response.request_sent) == (b'413', False)
    assert 0 < asked_for < 65536 + size


class Full:
    """The server's end of a connection that has no room for more until it is read."""

    async def get_connection(self, *_):
        ours, self.theirs = socket.socketpair()
        ours.setblocking(False)
        self.theirs.setblocking(False)
        self.sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                self.sent += ours.send(bytes(65536))
        return ours

    async def body(self, length):
        """Read a request whose body has that length, and answer it."""
        loop = asyncio.get_running_loop()
        data = b''
        while len(data.partition(b'\r\n\r\n')[2]) < length:
            data += (await loop.sock_recv(self.theirs, 65536)).lstrip(b'\0')
        await loop.sock_sendall(self.theirs, OK)
        return data.partition(b'\r\n\r\n')[2]


@on_loops
async def test_a_body_that_waits_while_there_is_no_room_may_have_time_outs_of_its_own():
    async def body():
        yield b'a'
        for _ in range(3):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.001):
                    await forever()
        late.set()
        yield b'b'
        await asyncio.sleep(0)
        yield b'c'

    full, late = Full(), asyncio.Event()
    async with pool(get_connection=full.get_connection) as request:
        task = asyncio.create_task(request(
            b'PUT', 'http://a.test/', headers=of_length(3), body=body))
        await late.wait()
        assert await full.body(3) == b'abc'
        code, _, _ = await task
        assert (code, task.cancelling()) == (b'200', 0)
        full.theirs.close()


@on_loops
async def test_a_body_that_only_takes_turns_waits_for_room():
    async def body():
        nonlocal taken
        yield b'a'
        for _ in range(5):
            await asyncio.sleep(0)
            taken += 1
        yield b'b'

    full, taken = Full(), 0
    async with pool(get_connection=full.get_connection) as request:
        task = asyncio.create_task(request(
            b'PUT', 'http://a.test/', headers=of_length(2), body=body))
        await turns(20)
        assert taken == 0
        assert await full.body(2) == b'ab'
        assert (await task)[0] == b'200'
        full.theirs.close()


@pytest.mark.parametrize('ending', ['times-out', 'is-cancelled', 'fails'])
@on_loops
async def test_what_was_yielded_may_have_no_room_while_the_body_waits(ending):
    full, body = Full(), Body(b'a', b'b', forever)
    async with pool(get_connection=full.get_connection,
                    socket_timeout=0.05 if ending == 'times-out' else 10) as request:
        task = asyncio.create_task(request(
            b'PUT', 'http://a.test/', headers=of_length(3), body=body))
        await body.waits.wait()
        await turns(3)
        if ending == 'is-cancelled':
            task.cancel('why')
            with pytest.raises(asyncio.CancelledError) as cancelled:
                await task
            assert cancelled.value.args == ('why',)
        else:
            if ending == 'fails':
                full.theirs.close()
            with pytest.raises(HttpConnectionError) as caught:
                await task
            assert ', sending the request: ' in str(caught.value)
        assert body.events == [asyncio.CancelledError, True, 'cleaned up']
        full.theirs.close()


@on_loops
async def test_a_body_that_waits_for_nothing_that_can_be_awaited_may_go_on():
    class Nothing:
        def __await__(self):
            yield 5

    async def body():
        yield b'a'
        with contextlib.suppress(RuntimeError):
            await Nothing()
        yield b'b'

    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        await request(b'PUT', server.url, headers=of_length(2), body=body)
    assert script.bodies == [b'ab']


@on_loops
async def test_a_body_that_waits_first_does_not_hold_the_head_back():
    async def script(peer):
        await peer.read_head()
        got_head.set()
        assert await peer.read(3) == b'abc'
        await peer.send(OK)

    async def body():
        await got_head.wait()
        yield b'abc'

    got_head = asyncio.Event()
    async with Server(script) as server, pool() as request:
        code, _, _ = await request(b'PUT', server.url, headers=of_length(3), body=body)
    assert code == b'200'


@on_loops
async def test_a_body_is_asked_for_a_chunk_when_the_one_before_has_arrived():
    async def script(peer):
        await peer.read_head()
        for _ in range(3):
            arrived.append(await peer.read(100_000))
        await peer.send(OK)

    async def body():
        for number in range(3):
            yield b'x' * 100_000
            await until(lambda number=number: len(arrived) > number)

    arrived = []
    async with Server(script) as server, pool() as request:
        code, _, _ = await request(b'PUT', server.url, headers=of_length(300_000), body=body)
    assert code == b'200'


@on_loops
async def test_an_upload_to_a_server_that_does_not_read_times_out_and_its_body_is_closed():
    body = Body(LARGE, LARGE)
    with deaf_server() as server:
        async with pool(get_sock=small_sock, socket_timeout=0.05) as request:
            with pytest.raises(HttpDataError) as caught:
                await request(b'PUT', server.url, headers=of_length(2 * len(LARGE)), body=body)
            assert body.events == [GeneratorExit, True, 'cleaned up']
        assert 0 < len(await server.all_sent()) < len(LARGE)
    assert type(caught.value) is HttpDataError
    assert type(caught.value.__cause__) is TimeoutError
    assert str(caught.value) == at(
        server, 'sending the request: TimeoutError: socket_timeout, 0.05 seconds, passed')
    assert (caught.value.reused, caught.value.response_started) == (False, False)
    assert cancelling() == 0


# Whatever the body waits for in its first step, with a head that the server does not take.
BLOCKED = {
    'waits': (lambda: Body(forever), [asyncio.CancelledError, True, 'cleaned up']),
    'waits-and-fails-to-clean-up': (lambda: Body(forever, cleanup_error=LookupError()),
                                    [asyncio.CancelledError, True, 'cleaned up']),
    'goes-on-when-cancelled': (lambda: Body(forever, swallows=True),
                               [asyncio.CancelledError, True, 'cleaned up']),
    'bare-yields': (lambda: Body(None, forever), [asyncio.CancelledError, True, 'cleaned up']),
}


@pytest.mark.parametrize('name', BLOCKED)
@on_loops_at_once
async def test_a_body_in_its_first_step_is_closed_when_its_head_is_blocked(name):
    make, events = BLOCKED[name]
    body = make()
    with deaf_server() as server:
        async with pool(get_sock=small_sock, socket_timeout=0.05) as request:
            with pytest.raises(HttpDataError) as caught:
                await request(b'PUT', server.url, body=body,
                              headers=((b'a', LARGE), *of_length(1)))
            assert body.events == events
        assert 0 < len(await server.all_sent()) < len(LARGE)
    assert str(caught.value) == at(
        server, 'sending the request: TimeoutError: socket_timeout, 0.05 seconds, passed')
    assert cancelling() == 0


class Closable(Chunks):
    """An async iterator with an `aclose` of its own."""

    def __init__(self, *chunks):
        super().__init__(*chunks)
        self.events = []
        self.waits = asyncio.Event()

    async def __anext__(self):
        try:
            if not self.chunks:
                self.waits.set()
                await forever()
            return self.take()
        except BaseException as error:
            self.events.append(type(error))
            raise

    async def aclose(self):
        await asyncio.sleep(0)
        self.events.append('closed')


class Unclosable(Closable):
    aclose = property()


@pytest.mark.parametrize('kind, chunks, headers, events', [
    pytest.param(Closable, (), ((b'a', LARGE), *of_length(1)),
                 [asyncio.CancelledError, 'closed'], id='in-its-first-step'),
    pytest.param(Closable, (LARGE,), of_length(len(LARGE)), ['closed'], id='after-a-chunk'),
    pytest.param(Unclosable, (), ((b'a', LARGE), *of_length(1)),
                 [asyncio.CancelledError], id='in-its-first-step-without-aclose'),
    pytest.param(Unclosable, (LARGE,), of_length(len(LARGE)), [],
                 id='after-a-chunk-without-aclose'),
])
@on_loops_at_once
async def test_an_async_iterator_is_closed_if_it_can_be(kind, chunks, headers, events):
    chunks = kind(*chunks)
    with deaf_server() as server:
        async with pool(get_sock=small_sock, socket_timeout=0.05) as request:
            with pytest.raises(HttpDataError) as caught:
                await request(b'PUT', server.url, body=lambda: chunks, headers=headers)
    assert type(caught.value.__cause__) is TimeoutError
    assert chunks.events == events


class Waiting(Chunks):
    """Its one step is a future of somebody else."""

    def __init__(self):
        super().__init__()
        self.future = asyncio.get_running_loop().create_future()
        self.waits = asyncio.Event()

    async def __anext__(self):
        self.waits.set()
        return await self.future


@pytest.mark.parametrize('ending', ['times-out', 'is-cancelled', 'is-closed'])
@on_loops
async def test_what_a_body_waits_for_is_cancelled_as_a_task_does_it(ending):
    chunks = Waiting()
    with deaf_server() as server:
        async with pool(get_sock=small_sock,
                        socket_timeout=0.05 if ending == 'times-out' else 10) as request:
            coroutine = request(b'PUT', server.url, headers=((b'a', LARGE), *of_length(9)),
                                body=lambda: chunks)
            if ending == 'is-closed':
                await run_until(coroutine, chunks.waits.is_set)
                coroutine.close()
            elif ending == 'is-cancelled':
                task = asyncio.create_task(coroutine)
                await chunks.waits.wait()
                await turns(3)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            else:
                with pytest.raises(HttpDataError):
                    await coroutine
            assert chunks.future.cancelled()


# What a body of content-length 3 yields, the error, and what the body raises or gets.
FAILING_BODIES = {
    'too-many-bytes': ((b'ab', b'cd'), 'the body yielded more than its content-length of 3',
                       GeneratorExit),
    'too-many-bytes-at-once': ((b'abcd',), 'the body yielded more than its content-length of 3',
                               GeneratorExit),
    'too-many-bytes-after-a-wait': (
        (None, b'abcd'), 'the body yielded more than its content-length of 3', GeneratorExit),
    'too-few-bytes': ((b'ab',), 'the body ended 1 bytes short of its content-length of 3', None),
    'an-error': ((b'ab', LookupError('why')), 'LookupError: why', LookupError),
    'no-bytes': ((b'ab', 5), 'TypeError: the body must yield bytes, got int', GeneratorExit),
}


@pytest.mark.parametrize('cleanup_error', [None, LookupError('of the cleaning up')])
@on_loops
async def test_a_body_is_closed_in_the_same_task_before_the_request_raises(cleanup_error):
    for name, (chunks, text, raised) in FAILING_BODIES.items():
        if cleanup_error is not None and raised is not GeneratorExit:
            continue  # then it is not we who close it
        body = Body(*chunks, cleanup_error=cleanup_error)
        async with Server(Uploads()) as server, pool() as request:
            with pytest.raises(HttpError) as caught:
                await request(b'PUT', server.url, headers=of_length(3), body=body)
            assert body.events == [*([raised] if raised else []), True, 'cleaned up'], name
        assert str(caught.value) == at(server, f'the request body: {text}')


@pytest.mark.parametrize('chunks', [
    pytest.param((forever,), id='in-its-first-step'),
    pytest.param((b'ab', forever), id='after-a-chunk'),
    pytest.param((None, None, b'ab', None, forever), id='later'),
])
@on_loops
async def test_a_request_that_is_cancelled_while_its_body_waits_cancels_the_body(chunks):
    body = Body(*chunks)
    script = Uploads()
    async with Server(script) as server, pool() as request:
        task = asyncio.create_task(request(b'PUT', server.url, headers=of_length(9), body=body))
        await body.waits.wait()
        await turns(3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert body.events == [asyncio.CancelledError, True, 'cleaned up']
        assert task.cancelling() == 1
        assert await script.body() == b''.join(
            chunk for chunk in chunks if isinstance(chunk, bytes))


@pytest.mark.parametrize('cleanup_error', [None, LookupError('of the cleaning up')])
@pytest.mark.parametrize('headers, chunks, events', [
    pytest.param(of_length(len(LARGE)), (LARGE,), [GeneratorExit, True, 'cleaned up'],
                 id='while-a-chunk-is-blocked'),
    pytest.param(((b'a', LARGE), *of_length(1)), (forever,),
                 [asyncio.CancelledError, True, 'cleaned up'], id='while-the-head-is-blocked'),
])
@on_loops
async def test_a_request_that_is_cancelled_while_it_is_blocked_closes_its_body(
        headers, chunks, events, cleanup_error):
    body = Body(*chunks, cleanup_error=cleanup_error)
    with deaf_server() as server:
        async with pool(get_sock=small_sock) as request:
            task = asyncio.create_task(request(b'PUT', server.url, headers=headers, body=body))
            await turns(10)
            assert body.events == []
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert body.events == events
            assert task.cancelling() == 1
        assert 0 < len(await server.all_sent()) < len(LARGE)


@on_loops
async def test_the_server_does_not_wait_for_the_end_of_the_connection_while_a_body_cleans_up():
    async def body():
        try:
            yield b'abcd'
        finally:
            await until(lambda: script.received)
            cleaned_up.append(True)

    cleaned_up = []
    script = Uploads()
    async with Server(script) as server, pool() as request:
        with pytest.raises(HttpConnectionError):
            await request(b'PUT', server.url, headers=of_length(1), body=body)
    assert cleaned_up == [True]


@on_loops
async def test_a_cancellation_while_a_body_cleans_up_wins_over_the_error_before():
    async def body():
        try:
            yield b'abcd'
        finally:
            cleans_up.set()
            await forever()

    cleans_up = asyncio.Event()
    async with Server(Uploads()) as server, pool() as request:
        task = asyncio.create_task(request(b'PUT', server.url, headers=of_length(1), body=body))
        await cleans_up.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelling() == 1


@pytest.mark.parametrize('what', ['an early response', 'a reset'])
@on_loops
async def test_a_cancellation_while_a_body_waits_wins_over_what_comes_as_it_cleans_up(what):
    async def script(peer):
        await peer.read_head()
        await peer.read(4)
        await cleans_up.wait()
        if what == 'a reset':
            peer.reset()
        else:
            await peer.send(b'HTTP/1.1 413 No\r\ncontent-length: 0\r\n\r\n')
            await peer.closed()

    async def body():
        try:
            yield b'abcd'
            waits.set()
            await forever()
        finally:
            cleans_up.set()
            # Until what has come ends that, too.
            await forever()

    waits, cleans_up = asyncio.Event(), asyncio.Event()
    async with Server(script) as server, pool() as request:
        task = asyncio.create_task(request(b'PUT', server.url, headers=of_length(5), body=body))
        await waits.wait()
        task.cancel('why')
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert caught.value.args == ('why',)
        assert task.cancelling() == 1


@on_loops
async def test_a_timeout_around_a_request_interrupts_its_body():
    body = Body(b'ab', forever)
    async with Server(Uploads()) as server, pool() as request:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await request(b'PUT', server.url, headers=of_length(3), body=body)
        assert body.events == [asyncio.CancelledError, True, 'cleaned up']
        assert cancelling() == 0


@pytest.mark.parametrize('headers', [
    pytest.param(of_length(2), id='while-the-body-waits'),
    pytest.param(((b'a', LARGE), *of_length(2)), id='while-the-head-is-blocked'),
])
@on_loops
async def test_a_timeout_in_a_body_is_that_of_the_body(headers):
    async def body():
        async with asyncio.timeout(0.05):
            await forever()
        yield b'ab'

    with deaf_server() as server:
        async with pool(get_sock=small_sock) as request:
            with pytest.raises((HttpDataError, asyncio.CancelledError)) as caught:
                await request(b'PUT', server.url, headers=headers, body=body)
    assert type(caught.value) is HttpDataError
    assert str(caught.value) == at(server, 'the request body: TimeoutError')
    assert cancelling() == 0


@on_loops
async def test_a_cancellation_in_the_tick_of_a_timeout_around_a_chunk_wins():
    """The chunk is being sent, to a server that does not read."""
    async def body():
        async with asyncio.timeout(None) as scope:
            scopes.append(scope)
            yield LARGE * 20

    async def script(peer):
        peer.writer.transport.pause_reading()
        await forever()

    scopes = []
    async with Server(script) as server, pool(get_sock=small_sock) as request:
        task = asyncio.create_task(request(
            b'POST', server.url, headers=of_length(len(LARGE) * 20), body=body))
        await until(lambda: scopes)
        await turns(50)
        scopes[0].reschedule(0)
        asyncio.get_running_loop().call_soon(task.cancel)
        await asyncio.wait([task])
        assert task.cancelled()
        assert task.cancelling() == 1


@on_loops
async def test_a_timeout_in_a_body_that_goes_on_is_no_failure_of_ours():
    async def body():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await forever()
        yield b'ab'

    with deaf_server() as server:
        async with pool(get_sock=small_sock, socket_timeout=0.1) as request:
            with pytest.raises(HttpDataError) as caught:
                await request(b'PUT', server.url, headers=((b'a', LARGE), *of_length(2)),
                              body=body)
    # The server never reads, so it does end with an error, but not with one about coroutines.
    assert type(caught.value.__cause__) is TimeoutError


@on_loops
async def test_an_error_in_a_body_is_not_a_cancellation_of_the_request():
    """A body may wait for what somebody else cancels."""
    async def body():
        yield b'a'
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        try:
            await future
        except asyncio.CancelledError:
            yield b'b'

    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        await request(b'PUT', server.url, headers=of_length(2), body=body)
    assert script.bodies == [b'ab']


@pytest.mark.parametrize('chunks', [(), (b'ab',)], ids=['in-its-first-step', 'after-a-chunk'])
@on_loops
async def test_a_request_whose_coroutine_is_closed_closes_its_connection(chunks):
    chunks = Closable(*chunks)
    script = Uploads()
    async with Server(script) as server, pool() as request:
        coroutine = request(b'PUT', server.url, headers=of_length(9), body=lambda: chunks)
        await run_until(coroutine, chunks.waits.is_set)
        coroutine.close()
        # An `aclose` could not be awaited any more.
        assert chunks.events == [asyncio.CancelledError]
        await script.body()


@pytest.mark.parametrize('chunks, headers', [
    pytest.param((forever,), of_length(9), id='in-its-first-step'),
    pytest.param((b'ab', forever), of_length(9), id='after-a-chunk'),
    pytest.param((forever,), ((b'a', LARGE), *of_length(9)), id='while-the-head-is-blocked'),
])
@on_loops
async def test_a_request_whose_coroutine_is_closed_lets_its_generator_clean_up(chunks, headers):
    # Left to itself, the loop would close it in a task, and that would fail.
    async def body():
        try:
            for chunk in chunks:
                if chunk is forever:
                    waits.append(True)
                    await forever()
                yield chunk
        finally:
            cleaned_up.append(True)

    waits, cleaned_up = [], []
    with deaf_server() as server:
        async with pool(get_sock=small_sock) as request:
            coroutine = request(b'PUT', server.url, headers=headers, body=body)
            await run_until(coroutine, lambda: waits)
            coroutine.close()
            assert cleaned_up == [True]


class Ending:
    """A body function whose generator has yet to end when the request is closed."""

    def __init__(self, first, goes_on=0, cleanup=0):
        self.first = first
        self.goes_on = goes_on
        self.cleanup = cleanup
        self.is_open = False

    async def __call__(self):
        self.is_open = True
        try:
            yield self.first
            if not self.goes_on:
                await forever()
            for _ in range(self.goes_on):
                with contextlib.suppress(asyncio.CancelledError):
                    await forever()
            yield b'more'
        finally:
            try:
                await turns(self.cleanup)
            finally:
                self.is_open = False


@pytest.mark.parametrize('is_blocked', [True, False], ids=['blocked', 'waits'])
@pytest.mark.parametrize('goes_on, cleanup', [
    pytest.param(0, 0, id='ends'), pytest.param(0, 2, id='awaits-as-it-cleans-up'),
    pytest.param(1, 0, id='goes-on'), pytest.param(1, 2, id='goes-on-and-cleans-up'),
    pytest.param(5, 2, id='goes-on-again-and-again')])
@on_loops
async def test_a_request_whose_coroutine_is_closed_ends_its_generator_and_sends_no_more(
        is_blocked, goes_on, cleanup):
    body = Ending(LARGE if is_blocked else b'first', goes_on, cleanup)
    with deaf_server() as server:
        async with pool(get_sock=small_sock) as request:
            coroutine = request(b'PUT', server.url, headers=of_length(10 ** 6), body=body)
            await run_until(coroutine, lambda: body.is_open)
            coroutine.close()
            assert not body.is_open
        assert b'more' not in await server.all_sent()


@on_loops
async def test_a_request_whose_coroutine_is_closed_gives_its_resolver_up():
    def get_dns_resolver(get_logger_adapter):
        async def resolve(name, kind, get_logger_adapter):
            try:
                waits.append(True)
                await forever()
            except BaseException as error:
                events.append(type(error))
                raise

        async def clear_cache(get_logger_adapter):
            pass

        return resolve, clear_cache

    waits, events = [], []
    async with pool(get_dns_resolver=get_dns_resolver) as request:
        coroutine = request(b'GET', 'http://any.example/')
        await run_until(coroutine, lambda: waits)
        coroutine.close()
        assert events == [asyncio.CancelledError]


@on_clock
async def test_the_clock_does_not_run_while_the_body_of_the_caller_does():
    async def body():
        for chunk in (b'a', b'b'):
            await passing(60)
            yield chunk

    script = Answering(OK)
    async with Server(script) as server, pool(socket_timeout=5) as request:
        await request(b'PUT', server.url, headers=of_length(2), body=body)
    assert script.bodies == [b'ab']


@on_loops_at_once
async def test_the_time_of_an_upload_is_that_of_each_progress_of_it():
    loop = asyncio.get_running_loop()
    with deaf_server() as server:
        async with pool(get_sock=small_sock, socket_timeout=1) as request:
            start = loop.time()
            task = asyncio.create_task(request(
                b'PUT', server.url, headers=of_length(len(LARGE)), body=streamed(LARGE)))
            await turns(10)
            with server.accept() as accepted:
                received = 0
                while loop.time() < start + 1.2:
                    received += len(await loop.sock_recv(accepted, 4096))
                    await asyncio.sleep(0.01)
                assert received < len(LARGE)
                while received < len(LARGE):
                    received += len(await loop.sock_recv(accepted, 2 ** 20))
                await loop.sock_sendall(accepted, OK)
                assert (await task)[0] == b'200'


@on_loops
async def test_a_large_head_is_sent_whole_to_a_server_that_reads_slowly():
    with deaf_server() as server:
        async with pool(get_sock=small_sock) as request:
            task = asyncio.create_task(request(b'GET', server.url, headers=((b'a', LARGE),)))
            await turns(10)
            loop = asyncio.get_running_loop()
            with server.accept() as accepted:
                received = b''
                while not received.endswith(b'\r\n\r\n'):
                    received += await loop.sock_recv(accepted, 10_000)
                await loop.sock_sendall(accepted, OK)
                assert (await task)[0] == b'200'
    assert received == (f'GET / HTTP/1.1\r\nhost: 127.0.0.1:{server.port}\r\n'.encode()
                        + b'a: ' + LARGE + b'\r\n\r\n')


@contextlib.asynccontextmanager
async def counting_turns():
    """Yields a function that tells how many turns another task has had."""
    async def count():
        nonlocal counted
        while True:
            await asyncio.sleep(0)
            counted += 1

    counted = 0
    task = asyncio.create_task(count())
    yield lambda: counted
    task.cancel()


@on_loops
@pytest.mark.parametrize('chunk, number, turns_at_least', [
    pytest.param(LARGE, 40, 40 * len(LARGE) // 2 ** 19, id='large'),
    pytest.param(b'-', 5000, 5000 * 1024 // 2 ** 19, id='tiny'),
    pytest.param(b'', 5000, 5000 * 1024 // 2 ** 19, id='empty'),
])
async def test_an_upload_lets_other_tasks_run(chunk, number, turns_at_least):
    length = number * len(chunk) + 1

    async def script(peer):
        await peer.read_head()
        await peer.read(length)
        await peer.send(OK)

    async def body():
        nonlocal had
        for _ in range(number):
            yield chunk
        had = counted()
        yield b'.'

    had = 0
    async with Server(script) as server, pool() as request, counting_turns() as counted:
        await request(b'PUT', server.url, headers=of_length(length), body=body)
    assert had >= turns_at_least


@on_loops
async def test_a_request_that_fails_at_once_lets_other_tasks_run():
    [sock] = bound_to('127.0.0.1')  # and not listening
    with sock:
        async with pool() as request, counting_turns() as counted:
            for _ in range(10):
                await failed(request(b'GET', f'http://127.0.0.1:{sock.getsockname()[1]}/'),
                             HttpConnectionError, ConnectionRefusedError)
            assert counted() >= 5
