"""Tests of lowhaio_compression: content that others have coded, and that it codes itself."""

import asyncio
import functools
import gc
import gzip
import importlib.util
import inspect
import pathlib
import random
import sys
import tracemalloc
import types
import zlib

import brotli
import pytest

import lowhaio_compression
from lowhaio import (
    HttpConnectionClosedError,
    HttpConnectionError,
    HttpDataError,
    buffered,
    streamed,
)
from lowhaio_chunked import chunked as chunked_body
from lowhaio_compression import compressed, decompressed
from tests.harness import (
    Answering,
    Server,
    internet,
    on_loops,
    pool,
    python_blocks,
    response,
    run_block,
    turns,
    until,
    value,
    values_of,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


async def told_of_the_close(body):
    """Check that reading on raises each time."""
    for reading in buffered(body), anext(body):
        with pytest.raises(HttpDataError) as caught:
            await reading
        assert (caught.value.response_started, caught.value.phase) == (True, 'content')
        assert str(caught.value).endswith('failed: the response body was closed before its end')
        assert type(caught.value.__cause__) is ConnectionAbortedError
        assert caught.value.response_started


async def forever():
    await asyncio.get_running_loop().create_future()


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


ENCODERS = {
    'gzip': gzip.compress,
    'x-gzip': gzip.compress,
    'deflate': zlib.compress,
    'Deflate': raw_deflate,
    # The highest quality, which is the default, takes a second for a bomb that is no smaller then.
    'br': functools.partial(brotli.compress, quality=9),
    'zstd': zstd.compress,
}
CONTENTS = {
    'empty': b'',
    'one-byte': b'a',
    'text': b'The content, ' * 1000,
    'random': random.Random(1).randbytes(200_000),
    'zeros': bytes(1_000_000),
    'mixed': b''.join(random.Random(size).randbytes(size) + bytes(size * 97)
                      for size in range(100)),
}
MAX_CHUNK = 64 * 1024


def coded(coding: str, content: bytes) -> bytes:
    return response(200, content, b'content-encoding: ' + coding.encode(), b'x: y')


def chunked(*pieces: bytes) -> bytes:
    return b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-encoding: gzip\r\n\r\n' + \
        b''.join(b'%x\r\n%b\r\n' % (len(piece), piece) for piece in pieces)


async def received(raw: bytes, *, method=b'GET', headers=(), pieces=None, **options):
    """The code and headers of a response, its chunks, and the head of the request."""
    async def script(peer):
        heads.append(await peer.read_head())
        await peer.send(*(pieces or [raw]))
        await peer.closed()

    heads = []
    async with Server(script) as server, pool(keep_alive_timeout=0) as request:
        code, fields, body = await decompressed(request, **options)(
            method, server.url, headers=headers)
        chunks = [chunk async for chunk in body]
        assert [chunk async for chunk in body] == []
    return code, fields, chunks, heads[0]


# --------------------------------------------------------------------------------- what is decoded


@pytest.mark.parametrize('content', CONTENTS)
@pytest.mark.parametrize('coding', ENCODERS)
@on_loops
async def test_each_coding_is_decoded(coding, content):
    code, fields, chunks, _ = await received(coded(coding, ENCODERS[coding](CONTENTS[content])))
    assert (code, fields) == (b'200', ((b'x', b'y'),))
    assert b''.join(chunks) == CONTENTS[content]
    assert all(0 < len(chunk) <= MAX_CHUNK for chunk in chunks)


@pytest.mark.parametrize('coding', ENCODERS)
@on_loops
async def test_content_is_decoded_wherever_it_is_cut(coding):
    content = b'The content, ' * 3 + random.Random(1).randbytes(30)
    raw = coded(coding, ENCODERS[coding](content))
    head, _, body = raw.partition(b'\r\n\r\n')
    pieces = [head + b'\r\n\r\n', *(bytes([byte]) for byte in body)]
    _, _, chunks, _ = await received(raw, pieces=pieces)
    assert b''.join(chunks) == content


@pytest.mark.parametrize('fields, coders', [
    (b'content-encoding: deflate, gzip', ['deflate', 'gzip']),
    (b'content-encoding: gzip\r\ncontent-encoding: BR , ,zstd', ['gzip', 'br', 'zstd']),
    (b'content-encoding: identity, gzip', ['gzip']),
    (b'content-encoding: gzip, gzip, gzip, gzip, gzip', ['gzip'] * 5),
])
@on_loops
async def test_codings_of_codings(fields, coders):
    content = data = CONTENTS['text']
    for coder in coders:
        data = ENCODERS[coder](data)
    _, fields, chunks, _ = await received(response(200, data, fields))
    assert b''.join(chunks) == content
    assert fields == ()


@pytest.mark.parametrize('coding', ['gzip', 'zstd'])
@on_loops
async def test_content_of_several_streams(coding):
    parts = [b'a', b'', CONTENTS['text'], b'', CONTENTS['random'], b'b']
    _, _, chunks, _ = await received(coded(coding, b''.join(map(ENCODERS[coding], parts))))
    assert b''.join(chunks) == b''.join(parts)


@on_loops
async def test_thousands_of_empty_members():
    _, _, chunks, _ = await received(coded('gzip', gzip.compress(b'') * 20000))
    assert chunks == []


@on_loops
async def test_a_skippable_frame():
    skippable = b'\x50\x2a\x4d\x18\x04\0\0\0abcd'
    _, _, chunks, _ = await received(coded('zstd', skippable + zstd.compress(b'a') + skippable))
    assert chunks == [b'a']


@on_loops
async def test_the_body_keeps_its_trailers_and_the_connection_is_reused():
    data = gzip.compress(b'The content')
    script = Answering(chunked(data[:5], data[5:]) + b'0\r\nA: b\r\n\r\n', response())
    async with Server(script) as server, pool() as request:
        _, _, body = await decompressed(request)(b'GET', server.url)
        assert await buffered(body) == b'The content'
        assert body.trailers == ((b'a', b'b'),)
        await decompressed(request)(b'GET', server.url)
    assert script.connections == [0, 0]


@on_loops
async def test_the_body_tells_if_the_request_was_sent_whole():
    async def script(peer):
        await peer.read_head()
        await peer.send(response(413, gzip.compress(b'too much'), b'content-encoding: gzip'))
        await forever()

    async def upload():
        yield b'a'
        await forever()

    async with Server(script) as server, pool() as request:
        code, _, body = await decompressed(request)(
            b'PUT', server.url, headers=((b'content-length', b'2'),), body=upload)
        assert (code, await buffered(body), body.request_sent) == (b'413', b'too much', False)
    async with Server(Answering(coded('gzip', gzip.compress(b'a')))) as server, pool() as request:
        _, _, body = await decompressed(request)(b'GET', server.url)
        assert (await buffered(body), body.request_sent) == (b'a', True)


@on_loops
async def test_the_body_has_what_other_layers_have_added_to_theirs():
    class Body:
        hops = ('added by another layer',)

    async def request(*args, **kwargs):
        return b'200', ((b'content-encoding', b'gzip'),), Body()

    _, _, body = await decompressed(request)(b'GET', 'http://a/')
    assert body.hops is Body.hops


@on_loops
async def test_each_repr_shows_the_state_and_no_content():
    def state():
        frame = inspect.currentframe()
        while frame is not None:
            if frame.f_globals['__name__'] == 'lowhaio_compression':
                yield from (repr(each) for each in frame.f_locals.values()
                            if type(each).__module__ == 'lowhaio_compression')
            frame = frame.f_back

    async def hidden():
        shown.append(sorted(set(state())))
        yield gzip.compress(b'hidden')

    async def request(*args, **kwargs):
        return b'200', ((b'content-encoding', b'gzip'),), hidden()

    shown = []
    _, _, body = await decompressed(request)(b'GET', 'http://a/')
    assert await buffered(body) == b'hidden'
    coded = compressed(hidden, b'gzip')()
    assert repr(coded).startswith('<CompressedBody goes on of <')
    assert await buffered(coded)
    assert repr(coded).startswith('<CompressedBody has ended of <')
    [decoder, decompressed_body], [compressed_body] = shown
    assert decoder == '<Decoder of 0 bytes needs_input=True>'
    assert decompressed_body.startswith('<DecompressedBody gzip of <')
    # It has its compressor back only after a chunk.
    assert compressed_body.startswith('<CompressedBody has ended of <')


@on_loops
async def test_layers_below_may_yield_empty_chunks():
    class Body:
        chunks = [b'', gzip.compress(b'a'), b'', b'']

        def __aiter__(self):
            return self

        async def __anext__(self):
            if not self.chunks:
                raise StopAsyncIteration
            return self.chunks.pop(0)

    async def request(*args, **kwargs):
        return b'200', ((b'content-encoding', b'gzip'),), Body()

    _, _, body = await decompressed(request)(b'GET', 'http://h/')
    assert await buffered(body) == b'a'


# ------------------------------------------------------------------ what is returned as it is


@pytest.mark.parametrize('method, code, coding', [
    (b'HEAD', 200, b'gzip'),
    (b'GET', 204, b'gzip'),
    (b'GET', 304, b'gzip'),
    (b'GET', 206, b'gzip'),
    (b'GET', 200, b'compress'),
    (b'GET', 200, b'gzip, unknown'),
    (b'GET', 200, b'identity'),
])
@on_loops
async def test_what_is_not_decoded_is_returned_as_it_is(method, code, coding):
    content = b'' if method == b'HEAD' or code in (204, 304) else b'coded'
    raw = response(code, content, b'content-encoding: ' + coding, b'content-digest: x')
    returned = await received(raw, method=method)
    assert returned[:3] == (b'%d' % code, (
        (b'content-encoding', coding), (b'content-digest', b'x'),
        (b'content-length', b'%d' % len(content))), [content] if content else [])


@on_loops
async def test_what_follows_a_switch_of_protocols_is_not_decoded_and_can_be_answered():
    async def script(peer):
        await peer.read_head()
        await peer.send(b'HTTP/1.1 101 Switching Protocols\r\nupgrade: echo\r\n'
                        b'content-encoding: gzip\r\n\r\n')
        await peer.send(await peer.reader.readexactly(4))

    async with Server(script) as server, pool() as request:
        code, _, body = await decompressed(request)(
            b'GET', server.url, headers=((b'connection', b'upgrade'), (b'upgrade', b'echo')))
        await body.send(b'ping')
        assert (code, await buffered(body)) == (b'101', b'ping')


@on_loops
async def test_a_decoded_body_tells_that_it_can_not_send():
    async with Server(Answering(coded('gzip', gzip.compress(b'a')))) as server, pool() as request:
        _, _, body = await decompressed(request)(b'GET', server.url)
        with pytest.raises(HttpDataError) as raised:
            await body.send(b'ping')
        assert str(raised.value) == (
            f'GET {server.origin} (peer 127.0.0.1:{server.port}), sending the request: '
            'RuntimeError: only after 101 Switching Protocols can more be sent')
        assert await buffered(body) == b'a'


@on_loops
async def test_fields_about_the_coded_content_are_removed():
    _, fields, _, _ = await received(response(
        200, gzip.compress(b''), b'Content-Encoding: gzip', b'etag: x', b'content-md5: x',
        b'Digest: x', b'content-digest: x', b'repr-digest: x', b'vary: accept-encoding'))
    assert fields == ((b'etag', b'x'), (b'vary', b'accept-encoding'))


# ------------------------------------------------------------------------------ what is asked for


@pytest.mark.parametrize('headers, expected', [
    ((), [b'gzip, deflate, br, zstd']),
    (((b'a', b'b'),), [b'gzip, deflate, br, zstd']),
    (((b'Accept-Encoding', b'identity'),), [b'identity']),
    (((b'Range', b'bytes=0-1'),), []),
])
@on_loops
async def test_what_is_accepted(headers, expected):
    for passed in (headers, iter(headers), list(headers)):
        *_, head = await received(response(), headers=passed)
        assert values_of(head, b'accept-encoding') == expected
        assert len(values_of(head, b'a')) == (headers == ((b'a', b'b'),))


@on_loops
async def test_other_arguments_are_passed_on():
    async def body(*args, **kwargs):
        yield b'%d%d' % (*args, *kwargs.values())

    script = Answering(response())
    length = (b'content-length', b'2')
    async with Server(script) as server, pool() as request:
        await decompressed(request)(
            b'PUT', server.url, {'a': 'b'}, (length,), body, (1,), {'c': 2})
        await decompressed(request)(
            method=b'PUT', url=server.url, params={'a': 'b'}, headers=(length,), body=body,
            body_args=(1,), body_kwargs={'c': 2})
    assert script.lines == ['PUT /?a=b'] * 2
    assert script.bodies == [b'12'] * 2


# ------------------------------------------------------------------------------------------ limits


def test_bombs():
    """The bombs have the sizes that the tests below rely on."""
    assert len(bomb('br')) < 1000
    assert len(bomb('gzip')) < 50_000
    assert len(bomb('gzip, gzip')) < 1000


SIZE = 32 * 2 ** 20


@functools.cache
def bomb(coding):
    if coding == 'gzip, gzip':
        return gzip.compress(bomb('gzip'))
    return ENCODERS[coding](bytes(SIZE))


@pytest.mark.parametrize('coding', ['gzip', 'deflate', 'br', 'zstd', 'gzip, gzip'])
@on_loops
async def test_memory_is_bounded_whatever_the_ratio(coding):
    async with Server(Answering(coded(coding, bomb(coding)))) as server, pool() as request:
        _, _, body = await decompressed(request)(b'GET', server.url)
        length = 0
        tracemalloc.start()
        try:
            async for chunk in body:
                assert len(chunk) <= MAX_CHUNK
                length += len(chunk)
            assert tracemalloc.get_traced_memory()[1] < 2 ** 20
        finally:
            tracemalloc.stop()
    assert length == SIZE


@on_loops
async def test_other_tasks_have_their_turns_meanwhile():
    async def other():
        nonlocal others
        while True:
            others += 1
            await asyncio.sleep(0)

    others = 0
    async with Server(Answering(coded('br', bomb('br')))) as server, pool() as request:
        _, _, body = await decompressed(request)(b'GET', server.url)
        task = asyncio.create_task(other())
        await buffered(body)
        task.cancel()
    assert others >= SIZE / MAX_CHUNK / 2


@pytest.mark.parametrize('coding', ENCODERS)
@on_loops
async def test_the_limit_of_the_whole(coding):
    content = CONTENTS['mixed']
    raw = coded(coding, ENCODERS[coding](content))
    _, _, chunks, _ = await received(raw, max_length=len(content))
    assert b''.join(chunks) == content
    with pytest.raises(HttpDataError, match='longer than max_length'):
        await received(raw, max_length=len(content) - 1)


@on_loops
async def test_the_limit_holds_for_what_is_decoded_in_between():
    inner = gzip.compress(b'a')
    # The inner stream has the name of a file, which is long but no content.
    inner = inner[:3] + b'\x08' + inner[4:10] + b'x' * 100_000 + b'\0' + inner[10:]
    assert gzip.decompress(inner) == b'a'
    raw = coded('gzip, gzip', gzip.compress(inner))
    assert (await received(raw, max_length=200_000))[2] == [b'a']
    with pytest.raises(HttpDataError, match='longer than max_length'):
        await received(raw, max_length=100_000)


@on_loops
async def test_too_many_codings():
    async with Server(Answering(coded(', '.join(['gzip'] * 6), b'x' * 10))) as server:
        async with pool() as request:
            with pytest.raises(HttpDataError, match='more than 5 content codings') as caught:
                await decompressed(request)(b'GET', server.url)
            assert (caught.value.response_started, caught.value.phase) == (True, 'head')


@on_loops
async def test_the_body_of_too_many_codings_is_closed():
    class Body:
        is_closed = False

        async def aclose(self):
            self.is_closed = True

    async def request(*args, **kwargs):
        return b'200', ((b'content-encoding', b','.join([b'gzip'] * 6)),), body

    body = Body()
    with pytest.raises(HttpDataError, match='more than 5 content codings'):
        await decompressed(request)(b'GET', 'http://a/')
    assert body.is_closed


@on_loops
async def test_a_window_of_zstd_that_is_too_large():
    content = random.Random(1).randbytes(1000)
    options = {zstd.CompressionParameter.window_log: 24}
    compressor = zstd.ZstdCompressor(options=options)
    data = compressor.compress(content) + compressor.flush()
    with pytest.raises(HttpDataError, match=r'\(zstd\) failed'):
        await received(coded('zstd', data))


# ------------------------------------------------------------------------------------- bad content

CONTENT = b'The content, ' * 10
BAD = [
    *(pytest.param(coding, encode(CONTENT)[:-1], 'ended before the end of its coding',
                   id=f'{coding}-cut-short') for coding, encode in ENCODERS.items()),
    *(pytest.param(coding, encode(CONTENT)[:1], 'ended before the end of its coding',
                   id=f'{coding}-first-byte') for coding, encode in ENCODERS.items()),
    *(pytest.param(coding, encode(CONTENT) + b'x', 'failed: .', id=f'{coding}-surplus')
      for coding, encode in ENCODERS.items()),
    *(pytest.param(coding, b'\xfe not this', 'failed: .', id=f'{coding}-rubbish')
      for coding in ENCODERS),
    pytest.param('gzip', gzip.compress(CONTENT) + b'\0', 'failed: .', id='zeros-after-a-member'),
    pytest.param('gzip', gzip.compress(CONTENT)[:-8] + bytes(8), 'incorrect data check',
                 id='checksum'),
    pytest.param('gzip', gzip.compress(b'a') + gzip.compress(b'b')[:-1], 'ended before',
                 id='second-member-cut-short'),
    pytest.param('deflate', zlib.compress(CONTENT) * 2, 'more after the end', id='zlib-twice'),
    pytest.param('gzip, br', brotli.compress(gzip.compress(CONTENT)[:-1]), 'ended before',
                 id='inner-cut-short'),
    pytest.param('gzip, br', brotli.compress(gzip.compress(CONTENT) + b'x'), 'failed: .',
                 id='inner-surplus'),
]


@pytest.mark.parametrize('coding, data, message', BAD)
@on_loops
async def test_bad_content_is_an_error(coding, data, message):
    async with Server(Answering(coded(coding, data))) as server, pool() as request:
        _, _, body = await decompressed(request)(b'GET', server.url)
        with pytest.raises(HttpDataError, match=message) as info:
            await buffered(body)
        assert str(info.value).startswith(
            f'decoding the response body ({coding.lower().replace("x-", "")}) failed: ')
        assert info.value.__cause__ is not None
        assert info.value.response_started
        with pytest.raises(HttpDataError) as again:
            await anext(body)
        assert again.value is info.value


@on_loops
async def test_bad_content_closes_the_connection():
    async def script(peer):
        await peer.read_head()
        await peer.send(coded('gzip', b'rubbish')[:-1])
        await peer.closed()
        closed.append(True)

    closed = []
    async with Server(script) as server, pool() as request:
        _, _, body = await decompressed(request)(b'GET', server.url)
        with pytest.raises(HttpDataError):
            await buffered(body)
        await until(lambda: closed)


@on_loops
async def test_a_body_closed_before_it_was_decoded_is_no_empty_one():
    async with Server(Answering(coded('gzip', gzip.compress(CONTENT)))) as server, \
            pool() as request:
        for chunks in 0, 1:
            _, _, body = await decompressed(request)(b'GET', server.url)
            for _ in range(chunks):
                await anext(body)
            await body.aclose()
            await told_of_the_close(body)
        _, _, body = await decompressed(request)(b'GET', server.url)
        assert await buffered(body) == CONTENT
        await body.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(body)


@on_loops
async def test_the_errors_of_the_body_stay_as_they_are():
    raw = coded('gzip', gzip.compress(CONTENT))[:-1]

    async def script(peer):
        await peer.read_head()
        await peer.send(raw)

    async with Server(script) as server, pool() as request:
        _, _, body = await decompressed(request)(b'GET', server.url)
        for _ in range(2):
            with pytest.raises(HttpConnectionClosedError, match='1 bytes before the end'):
                await buffered(body)


# ------------------------------------------------------------------------ bodies that are left


@pytest.mark.parametrize('leave', ['aclose', 'drop', 'cancel', 'cancel-while-decoding'])
@on_loops
async def test_a_body_that_is_left_closes_its_connection(leave):
    async def script(peer):
        await peer.read_head()
        await peer.send(chunked(bomb('br' if 'decoding' in leave else 'gzip')[:30000]).replace(
            b'gzip', b'br' if 'decoding' in leave else b'gzip'))
        await peer.closed()
        closed.append(True)

    async def read():
        async for _ in body:
            read_some.set()

    closed, read_some = [], asyncio.Event()
    async with Server(script) as server, pool() as request:
        _, _, body = await decompressed(request)(b'GET', server.url)
        assert len(await anext(body)) > 0
        if leave == 'aclose':
            await body.aclose()
            await body.aclose()
            await told_of_the_close(body)
        elif leave.startswith('cancel'):
            task = asyncio.create_task(read())
            await read_some.wait()
            await turns(5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            del task
        body = None
        gc.collect()
        await until(lambda: closed)


# ---------------------------------------------------------------------------------------- requests


DECODERS = {b'gzip': gzip.decompress, b'deflate': zlib.decompress, b'br': brotli.decompress,
            b'zstd': zstd.decompress}


@pytest.mark.parametrize('content', CONTENTS)
@pytest.mark.parametrize('coding', DECODERS)
@on_loops
async def test_a_request_body_is_compressed(coding, content):
    content = CONTENTS[content]

    async def body(*args, size):
        assert args == (1,)
        for start in range(0, len(content), size):
            yield content[start:start + size]

    for size in (50_000, 2_000_000):
        data = b''.join([chunk async for chunk in compressed(body, coding)(1, size=size)])
        assert DECODERS[coding](data) == content


@on_loops
async def test_a_compressed_body_is_sent_anew_with_each_request():
    body = chunked_body(compressed(streamed(CONTENTS['text']), b'gzip'))
    script = Answering(response())
    async with Server(script) as server, pool() as request:
        for _ in range(2):
            await request(b'PUT', server.url, body=body,
                          headers=((b'transfer-encoding', b'chunked'),))
    assert len(script.bodies) == 2
    assert script.bodies[0] == script.bodies[1]
    assert len(script.bodies[0]) < len(CONTENTS['text']) / 10


@on_loops
async def test_a_body_that_fails_gets_no_end():
    async def body():
        yield b'a'
        raise KeyError

    chunks = compressed(body, b'gzip')()
    data = []
    with pytest.raises(KeyError):
        async for chunk in chunks:
            data.append(chunk)
    assert [chunk async for chunk in chunks] == []
    with pytest.raises(EOFError):
        gzip.decompress(b''.join(data) or b'\x1f\x8b')


@on_loops
async def test_closing_a_compressed_body_closes_the_body():
    async def body():
        try:
            yield CONTENTS['random']
        finally:
            closed.append(True)

    class Plain:
        def __aiter__(self):
            return self

        async def __anext__(self):
            return b'a'

    closed = []
    chunks = compressed(body, b'gzip')()
    await anext(chunks)
    await chunks.aclose()
    assert closed == [True]
    assert [chunk async for chunk in chunks] == []
    await compressed(Plain, b'gzip')().aclose()


# -------------------------------------------------------------------------------- bad arguments


@pytest.mark.parametrize('make, message', [
    (lambda: decompressed(None), 'request must be a coroutine function, got NoneType'),
    (lambda: decompressed(print, max_length=-1), 'max_length must be .* got -1'),
    (lambda: decompressed(print, max_length='1'), "max_length must be .* got '1'"),
    (lambda: compressed(b'body', b'gzip'), 'body must be a function, got bytes'),
    (lambda: compressed(print, 'gzip'), "coding must be one of b'gzip', .* got 'gzip'"),
    (lambda: compressed(print, b'compress'), "coding must be one of .*, got b'compress'"),
])
def test_bad_arguments_fail_at_once(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@pytest.mark.parametrize('headers', [1, (1,), ((1, 2),)])
@on_loops
async def test_bad_headers_fail_before_anything_is_sent(headers):
    async with pool() as request:
        with pytest.raises(HttpConnectionError, match='headers must be pairs') as caught:
            await decompressed(request)(b'GET', 'http://127.0.0.1:1/', headers=headers)
        assert caught.value.phase == 'refused'


@pytest.mark.parametrize('missing, codings', [
    (['brotli'], [b'gzip', b'deflate', b'zstd']),
    (['backports.zstd', 'compression.zstd'], [b'gzip', b'deflate', b'br']),
    (['brotli', 'backports.zstd', 'compression.zstd'], [b'gzip', b'deflate']),
])
def test_codings_that_are_not_installed_are_not_asked_for(monkeypatch, missing, codings):
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    module = loaded_again()
    assert list(module.CODINGS) == codings
    assert module.ACCEPTED.split(b', ') == codings


def test_a_brotli_that_has_no_bound_is_not_used(monkeypatch):
    class Decompressor:
        def process(self, data):
            return data

    old = types.ModuleType('brotli')
    old.Decompressor = Decompressor
    monkeypatch.setitem(sys.modules, 'brotli', old)
    assert b'br' not in loaded_again().CODINGS


def loaded_again():
    spec = importlib.util.spec_from_file_location('again', lowhaio_compression.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def dechunked(body):
    content = b''
    while body:
        size, _, body = body.partition(b'\r\n')
        content += body[:int(size, 16)]
        body = body[int(size, 16) + 2:]
    return content


def test_the_example_of_the_readme(capsys):
    script = Answering(coded('gzip', gzip.compress(b'The content')), response())
    with internet(script, 'www.example.com'):
        for block in python_blocks(pathlib.Path(__file__).with_name('README.md')):
            run_block(block)
    assert capsys.readouterr().out == "200 b'The content'\n200 b''\n"
    assert value(script.heads[1], b'content-encoding') == b'gzip'
    assert gzip.decompress(dechunked(script.bodies[1])) == b'The content, ' * 100
