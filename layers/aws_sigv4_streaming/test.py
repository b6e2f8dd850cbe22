"""Tests of lowhaio_aws_sigv4_streaming, against what AWS has published and botocore's encoder.

Servers that verify checksums and signatures are in tests/outside/test_s3.py.
"""

import asyncio
import base64
import copy
import gc
import hashlib
import hmac
import importlib.util
import io
import os
import pathlib
import pickle
import random
import re
import sys
import types
import weakref
import zlib

import awscrt.checksums
import botocore.auth
import botocore.awsrequest
import botocore.credentials
import botocore.httpchecksum
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowhaio_aws_sigv4
import lowhaio_aws_sigv4_streaming
from lowhaio import (
    HttpConnectionError,
    HttpDataError,
    buffered,
    empty_async_iterator,
    streamed,
)
from lowhaio_aws_sigv4_streaming import (
    Check,
    CheckedBody,
    ChecksumError,
    available_checksums,
    check_of,
    checked,
    checksum,
    signed,
)
from lowhaio_retry import retry
from tests.harness import (
    CANCELLED,
    CLOSED_IN_TURN,
    OK,
    Answering,
    Body,
    Server,
    Uploads,
    at,
    connecting_to,
    failed,
    forever,
    get,
    internet,
    of_length,
    on_loops,
    pool,
    python_blocks,
    response,
    run_block,
    turns,
    until,
    value,
    values_of,
    yielding,
)

# Thousands of them take a minute: 100 are a share, the same in each run.
EXAMPLES = int(os.environ.get('LOWHAIO_EXAMPLES', '30'))

CHUNK_SIZE = 64 * 1024
UNSIGNED = 'STREAMING-UNSIGNED-PAYLOAD-TRAILER'
SIGNED = 'STREAMING-AWS4-HMAC-SHA256-PAYLOAD'

# The values of "123456789", as the catalogues of CRCs have them.
CHECK_VALUES = {
    'crc32': 'cbf43926',
    'crc32c': 'e3069283',
    'crc64nvme': 'ae8b14860a799888',
    'sha1': hashlib.sha1(b'123456789').hexdigest(),
    'sha256': hashlib.sha256(b'123456789').hexdigest(),
}


async def credentials():
    return 'AKID', 'secret', ()


def base64_of(name, data):
    """The value of `x-amz-checksum-…`, made in another way than the layer makes it."""
    digest = {
        'crc32': lambda: zlib.crc32(data).to_bytes(4, 'big'),
        'crc32c': lambda: awscrt.checksums.crc32c(data).to_bytes(4, 'big'),
        'crc64nvme': lambda: awscrt.checksums.crc64nvme(data).to_bytes(8, 'big'),
    }.get(name, lambda: hashlib.new(name, data).digest())()
    return base64.b64encode(digest)


# ---------------------------------------------------------------------------- what is received
#
# A strict decoder, which verifies all signatures, and shares nothing with the layer.

class Chain:
    """The signatures of one body, each of which depends on the one before."""

    def __init__(self, secret, scope, date, seed):
        self.scope, self.date, self.last = scope, date, seed
        self.key = b'AWS4' + secret
        for part in scope.split(b'/'):
            self.key = hmac.digest(self.key, part, 'sha256')

    def check(self, signature, kind, *data):
        lines = kind, self.date, self.scope, self.last, *(
            hashlib.sha256(each).hexdigest().encode() for each in data)
        expected = hmac.digest(self.key, b'\n'.join(lines), 'sha256').hex().encode()
        assert signature == expected
        self.last = signature


def decoded(body, chain, trailer):
    """The content of an `aws-chunked` body, and the value of its trailer field.

    All chunks but the last have the same size. The framing is what AWS's servers are strict about.
    """
    stream, content, sizes = io.BytesIO(body), [], []
    extension = rb'' if chain is None else rb';chunk-signature=([0-9a-f]{64})'
    while True:
        line = re.fullmatch(rb'(0|[1-9a-f][0-9a-f]*)' + extension + rb'\r\n', stream.readline())
        size = int(line[1], 16)
        data = stream.read(size)
        assert len(data) == size
        if chain is not None:
            chain.check(line[2], b'AWS4-HMAC-SHA256-PAYLOAD', b'', data)
        if not size:
            break
        assert stream.read(2) == b'\r\n'
        content.append(data)
        sizes.append(size)
    assert set(sizes[:-1]) <= {CHUNK_SIZE}
    assert not sizes or sizes[-1] <= CHUNK_SIZE
    found = None
    if trailer is not None:
        field = stream.readline()
        name, _, found = field.removesuffix(b'\r\n').partition(b':')
        assert name == trailer
        if chain is not None:
            line = re.fullmatch(rb'x-amz-trailer-signature:([0-9a-f]{64})\r\n', stream.readline())
            chain.check(line[1], b'AWS4-HMAC-SHA256-TRAILER', field.replace(b'\r\n', b'\n'))
    assert stream.read() == b'\r\n'
    return b''.join(content), found


def check_head(head):
    """Check the signature of a head against the one that botocore makes of it, and return it."""
    line, *lines = head.decode().removesuffix('\r\n\r\n').split('\r\n')
    method, target, _ = line.split(' ')
    fields = [tuple(line.split(': ', 1)) for line in lines]
    request = botocore.awsrequest.AWSRequest(method, 'http://' + dict(fields)['host'] + target)
    for name, field in fields:
        if name.lower() != 'authorization':
            request.headers[name] = field
    request.context['timestamp'] = request.headers['x-amz-date']
    auth = botocore.auth.S3SigV4Auth(
        botocore.credentials.Credentials('AKID', 'secret'), 's3', 'eu-west-2')
    auth.payload = lambda _: value(head, b'x-amz-content-sha256').decode()
    signature = auth.signature(
        auth.string_to_sign(request, auth.canonical_request(request)), request).encode()
    assert value(head, b'authorization').endswith(b', Signature=' + signature)
    return signature


def received(head, body):
    """The content of a request, and the value of its trailer. All that it says of it is checked.

    Its head is that of a request which `credentials` signs.
    """
    seed = check_head(head)
    kind = value(head, b'x-amz-content-sha256').decode()
    trailer = value(head, b'x-amz-trailer')
    assert kind in (UNSIGNED, SIGNED, SIGNED + '-TRAILER')
    assert kind.endswith('-TRAILER') == (trailer is not None)
    date = value(head, b'x-amz-date')
    chain = None if kind == UNSIGNED else Chain(
        b'secret', date[:8] + b'/eu-west-2/s3/aws4_request', date, seed)
    content, found = decoded(body, chain, trailer)
    assert value(head, b'content-length') == b'%d' % len(body)
    assert value(head, b'x-amz-decoded-content-length') == b'%d' % len(content)
    assert value(head, b'content-encoding').split(b',')[0] == b'aws-chunked'
    if trailer is not None:
        assert found == base64_of(trailer.decode().removeprefix('x-amz-checksum-'), content)
    return content, found


# ------------------------------------------------------------------------ what AWS has published
#
# https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming.html and sigv4-streaming-trailers

EXAMPLE_KEY = b'wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY'
EXAMPLE_TIME = 1369353600
EXAMPLE = (
    b'10000;chunk-signature=ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648\r\n'
    + b'a' * 65536 +
    b'\r\n'
    b'400;chunk-signature=0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497\r\n'
    + b'a' * 1024 +
    b'\r\n'
    b'0;chunk-signature=b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9\r\n'
    b'\r\n')
EXAMPLE_WITH_TRAILER = (
    b'10000;chunk-signature=b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2\r\n'
    + b'a' * 65536 +
    b'\r\n'
    b'400;chunk-signature=1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7\r\n'
    + b'a' * 1024 +
    b'\r\n'
    b'0;chunk-signature=2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992\r\n'
    b'x-amz-checksum-crc32c:sOO8/Q==\r\n'
    b'x-amz-trailer-signature:'
    b'd81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435\r\n'
    b'\r\n')


def example_chain(seed):
    return Chain(EXAMPLE_KEY, b'20130524/us-east-1/s3/aws4_request', b'20130524T000000Z', seed)


@on_loops
async def test_the_example_of_aws(monkeypatch):
    async def example_credentials():
        return 'AKIAIOSFODNN7EXAMPLE', EXAMPLE_KEY.decode(), ()

    monkeypatch.setattr(lowhaio_aws_sigv4, 'time', lambda: EXAMPLE_TIME)
    script = Answering(OK)
    async with Server(script) as server:
        async with pool(get_connection=connecting_to(http=server.port)) as request:
            await signed(request, example_credentials, 's3', 'us-east-1', checksum=None,
                         signed_payload=True)(
                b'PUT', 'http://s3.amazonaws.com/examplebucket/chunkObject.txt',
                headers=((b'x-amz-storage-class', b'REDUCED_REDUNDANCY'),),
                body=streamed(b'a' * 66560))
    assert script.bodies == [EXAMPLE]
    assert value(script.heads[0], b'content-length') == b'66824'
    assert value(script.heads[0], b'authorization').endswith(
        b', Signature=4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9')


@pytest.mark.parametrize('body, seed, trailer, expected', [
    (EXAMPLE, b'4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9', None, None),
    (EXAMPLE_WITH_TRAILER, b'106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e',
     b'x-amz-checksum-crc32c', b'sOO8/Q=='),
])
def test_the_decoder_of_these_tests_reads_what_aws_has_published(body, seed, trailer, expected):
    assert decoded(body, example_chain(seed), trailer) == (b'a' * 66560, expected)
    for index in (22, 100, 65700, 66700, len(body) - 10):
        damaged = body[:index] + (b'b' if body[index:index + 1] != b'b' else b'c') + \
            body[index + 1:]
        with pytest.raises((AssertionError, TypeError, ValueError)):
            decoded(damaged, example_chain(seed), trailer)


# -------------------------------------------------------------------------------- what is sent

FORMS = {
    f'{name} {"signed" if is_signed else "unsigned"}': {'checksum': name,
                                                         'signed_payload': is_signed}
    for name in (*CHECK_VALUES, None) for is_signed in (False, True) if name or is_signed}
all_forms = pytest.mark.parametrize('form', FORMS.values(), ids=FORMS)
LENGTHS = (0, 1, 15, 16, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 3 * CHUNK_SIZE, 250_000)


@all_forms
@on_loops
async def test_what_is_sent(form):
    script = Answering(OK)
    contents = [os.urandom(length) for length in LENGTHS]
    async with Server(script) as server, pool() as request:
        send = signed(request, credentials, 's3', 'eu-west-2', **form)
        for content in contents:
            await send(b'PUT', server.url + 'a b?c=d', body=streamed(content))
    assert [received(*sent)[0] for sent in zip(script.heads, script.bodies, strict=True)] == \
        contents
    kinds = {value(head, b'x-amz-content-sha256').decode() for head in script.heads}
    assert kinds == {SIGNED + ('-TRAILER' if form['checksum'] else '')
                     if form['signed_payload'] else UNSIGNED}


@on_loops
async def test_the_head_keeps_its_order():
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        await signed(request, credentials, 's3', 'eu-west-2')(
            b'PUT', server.url,
            headers=iter(((b'X-A', b'1'), (b'Content-Length', b'3'), (b'x-b', b'2'),
                          (b'Content-Encoding', b'gzip'), (b'content-encoding', b'br'),
                          (b'x-amz-checksum-algorithm', b'CRC32'), (b'x-c', b'3'))),
            body=streamed(b'abc'))
    [head] = script.heads
    names = head.split(b'\r\n')[2:-2]
    assert names[:9] == [
        b'X-A: 1', b'Content-Length: 44', b'x-b: 2', b'Content-Encoding: aws-chunked,gzip',
        b'content-encoding: br', b'x-amz-checksum-algorithm: CRC32', b'x-c: 3',
        b'x-amz-decoded-content-length: 3', b'x-amz-trailer: x-amz-checksum-crc32']
    assert script.bodies == [b'3\r\nabc\r\n0\r\nx-amz-checksum-crc32:NSRBwg==\r\n\r\n']


@on_loops
async def test_a_body_is_streamed():
    async def body(*sizes, first):
        yield first
        for size in sizes:
            await arrived.wait()
            yield bytes(size)

    async def script(peer):
        heads.append(await peer.read_head())
        assert await peer.read(7) == b'10000\r\n'
        assert await peer.read(CHUNK_SIZE) == b'a' * CHUNK_SIZE
        arrived.set()
        assert await peer.read(2 + 3 + 10 + 2) == b'\r\na\r\n' + bytes(10) + b'\r\n'
        await peer.send(OK)

    arrived, heads = asyncio.Event(), []
    async with Server(script) as server, pool() as request:
        code, _, _ = await signed(request, credentials, 's3', 'eu-west-2')(
            b'PUT', server.url, headers=of_length(CHUNK_SIZE + 10), body=body,
            body_args=iter((4, 6)), body_kwargs=iter((('first', b'a' * CHUNK_SIZE),)))
    assert code == b'200'
    check_head(heads[0])


class Kept:
    """A `request` that keeps what it is given."""

    async def __call__(self, method, url, *, headers, body, body_args, body_kwargs, **kwargs):
        self.headers = headers
        self.chunks = [chunk async for chunk in body(*body_args, **dict(body_kwargs))]
        self.kwargs = kwargs
        return b'200', (), streamed(b'')()


def sizes():
    """The sizes of chunks: around that of those that are sent, and small ones in between."""
    around = st.builds(lambda many, more: max(many * CHUNK_SIZE + more, 0),
                       st.integers(0, 3), st.integers(-2, 2))
    return st.lists(st.integers(0, 100) | st.integers(0, 2 * CHUNK_SIZE) | around, max_size=6)


def as_kinds(chunks, kinds):
    """The same chunks as other types that have bytes."""
    for chunk, kind in zip(chunks, kinds, strict=True):
        yield kind(chunk)


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(sizes(), st.sampled_from(sorted(FORMS)), st.integers(0, 1000))
def test_however_a_body_is_cut_the_same_is_sent(cuts, name, seed):
    async def sent(*chunks):
        kept = Kept()
        await signed(kept, credentials, 's3', 'eu-west-2', **FORMS[name])(
            b'PUT', 'http://127.0.0.1/', headers=of_length(len(content)),
            body=yielding, body_args=chunks)
        lines = [b'%b: %b' % field for field in kept.headers]
        return b'\r\n'.join((b'PUT / HTTP/1.1', *lines, b'', b'')), b''.join(kept.chunks)

    numbers = random.Random(seed)
    chunks = [numbers.randbytes(size) for size in cuts]
    content = b''.join(chunks)
    kinds = numbers.choices((bytes, bytearray, memoryview), k=len(chunks))
    head, body = asyncio.run(sent(*as_kinds(chunks, kinds)))
    assert received(head, body)[0] == content
    if not FORMS[name]['signed_payload']:
        assert asyncio.run(sent(content))[1] == body


@pytest.mark.parametrize('name, kind', [
    ('crc32', botocore.httpchecksum.Crc32Checksum),
    ('sha1', botocore.httpchecksum.Sha1Checksum),
    ('sha256', botocore.httpchecksum.Sha256Checksum),
    ('crc32c', botocore.httpchecksum.CrtCrc32cChecksum),
    ('crc64nvme', botocore.httpchecksum.CrtCrc64NvmeChecksum),
])
@pytest.mark.parametrize('length', LENGTHS)
def test_botocore_encodes_it_in_the_same_way(name, kind, length):
    content, kept = os.urandom(length), Kept()
    asyncio.run(signed(kept, credentials, 's3', 'eu-west-2', checksum=name)(
        b'PUT', 'https://a.example/', body=streamed(content)))
    assert b''.join(kept.chunks) == botocore.httpchecksum.AwsChunkedWrapper(
        io.BytesIO(content), checksum_cls=kind, checksum_name=f'x-amz-checksum-{name}',
        chunk_size=CHUNK_SIZE).read()


@on_loops
async def test_small_chunks_are_joined_and_other_tasks_get_turns():
    async def body():
        for _ in range(60_000):
            yield b'a'

    async def other():
        nonlocal count
        while True:
            count += 1
            await asyncio.sleep(0)

    count = 0
    task = asyncio.ensure_future(other())
    kept = Kept()
    await signed(kept, credentials, 's3', 'eu-west-2')(
        b'PUT', 'https://a.example/', headers=of_length(60_000), body=body)
    task.cancel()
    await turns(1)
    assert [len(chunk) for chunk in kept.chunks] == [60_008, 36]
    assert 200 < count < 300


@on_loops
async def test_what_a_generator_gets_to_see_when_a_request_is_cancelled():
    body = Body(b'a' * CHUNK_SIZE, forever)
    script = Uploads()
    async with Server(script) as server, pool() as request:
        task = asyncio.ensure_future(signed(request, credentials, 's3', 'eu-west-2')(
            b'PUT', server.url, headers=of_length(100_000), body=body))
        await body.waits.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert body.events == CANCELLED
        assert await script.body() == b'10000\r\n' + b'a' * CHUNK_SIZE + b'\r\n'


@on_loops
async def test_a_generator_is_closed_when_the_server_does_not_want_the_rest():
    async def script(peer):
        await peer.read_head()
        await peer.send(response(403))
        await peer.closed()

    body = Body(*[b'a' * CHUNK_SIZE] * 200)
    async with Server(script) as server, pool() as request:
        code, _, _ = await signed(request, credentials, 's3', 'eu-west-2')(
            b'PUT', server.url, headers=of_length(200 * CHUNK_SIZE), body=body)
    assert code == b'403'
    assert body.events == CLOSED_IN_TURN


@on_loops
async def test_an_iterator_without_aclose():
    class Chunks:
        def __init__(self):
            self.left = 3

        def __aiter__(self):
            return self

        async def __anext__(self):
            # It must not be asked again after its end.
            self.left -= 1
            assert self.left >= 0
            if not self.left:
                raise StopAsyncIteration
            return b'a' * 40_000

    async def closing(method, url, *, body, **kwargs):
        chunks = body()
        await anext(chunks)
        await chunks.aclose()
        # It is not whole, so it has no end.
        assert [chunk async for chunk in chunks] == []

    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        await signed(request, credentials, 's3', 'eu-west-2')(
            b'PUT', server.url, headers=of_length(80_000), body=Chunks)
    assert received(script.heads[0], script.bodies[0])[0] == b'a' * 80_000
    await signed(closing, credentials, 's3', 'eu-west-2')(
        b'PUT', 'https://a.example/', headers=of_length(80_000), body=Chunks)


NOTHING_MORE = b'10000\r\n' + b'a' * CHUNK_SIZE + b'\r\n'


@pytest.mark.parametrize('chunks, declared, cause, message, sent', [
    ((b'a' * CHUNK_SIZE, b'b'), CHUNK_SIZE, ValueError,
     'the body yielded more than its content-length of 65536', NOTHING_MORE),
    ((b'a' * CHUNK_SIZE, b'b' * 70_000), 100_000, ValueError,
     'the body yielded more than its content-length of 100000', NOTHING_MORE),
    ((b'a' * CHUNK_SIZE,), CHUNK_SIZE + 7, ValueError,
     'the body ended 7 bytes short of its content-length of 65543', NOTHING_MORE),
    ((b'a' * CHUNK_SIZE, b'b', OSError('a disk')), CHUNK_SIZE + 1, OSError, 'OSError: a disk',
     NOTHING_MORE),
    ((b'a' * CHUNK_SIZE, 'b'), CHUNK_SIZE + 1, TypeError,
     'TypeError: the body must yield bytes, got str', NOTHING_MORE),
])
@on_loops
async def test_a_body_that_is_not_whole_is_never_ended(chunks, declared, cause, message, sent):
    script = Uploads()
    async with Server(script) as server, pool() as request:
        await failed(
            signed(request, credentials, 's3', 'eu-west-2')(
                b'PUT', server.url, headers=of_length(declared), body=yielding,
                body_args=chunks),
            HttpDataError, cause,
            at(server, f'the request body: {message}'))
        assert await script.body() == sent


@pytest.mark.parametrize('chunks, declared, message', [
    ((b'abcd',), 3, 'the body yielded more than its content-length of 3'),
    ((), 3, 'the body ended 3 bytes short of its content-length of 3'),
    ((b'a',), 0, 'the body yielded more than its content-length of 0'),
])
@on_loops
async def test_of_a_small_body_of_another_length_nothing_is_sent(chunks, declared, message):
    script = Uploads()
    async with Server(script) as server, pool() as request:
        error = await failed(
            signed(request, credentials, 's3', 'eu-west-2')(
                b'PUT', server.url, headers=of_length(declared), body=yielding,
                body_args=chunks), HttpConnectionError, ValueError)
        assert str(error) == at(server, f'the request body: {message}')
        assert await script.body() is None


# ------------------------------------------------------------------------------- which requests

@on_loops
async def test_other_requests_are_signed_as_without_this_layer():
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        send = signed(request, credentials, 's3', 'eu-west-2', signed_payload=True)
        await send(b'GET', server.url)
        await send(b'PUT', server.url)
        await send(b'DELETE', server.url, body=empty_async_iterator)
        await send(b'POST', server.url, body=streamed(b'abc'))
        await send(b'PUT', server.url, body=streamed(b'abc'), body_hash='UNSIGNED-PAYLOAD')
    assert script.bodies == [b'', b'', b'', b'abc', b'abc']
    empty = hashlib.sha256().hexdigest().encode()
    assert [value(head, b'x-amz-content-sha256') for head in script.heads] == [
        empty, empty, empty, hashlib.sha256(b'abc').hexdigest().encode(), b'UNSIGNED-PAYLOAD']
    assert [value(head, b'content-length') for head in script.heads] == [
        None, b'0', None, b'3', b'3']
    for head in script.heads:
        check_head(head)
        assert values_of(head, b'content-encoding') == []


@on_loops
async def test_a_request_can_choose_its_form():
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        send = signed(request, credentials, 's3', 'eu-west-2')
        for form in FORMS.values():
            await send(b'PUT', server.url, body=streamed(b'abc'), **form)
    trailers = [value(head, b'x-amz-trailer') for head in script.heads]
    assert trailers == [form['checksum'] and f'x-amz-checksum-{form["checksum"]}'.encode()
                        for form in FORMS.values()]
    for sent in zip(script.heads, script.bodies, strict=True):
        assert received(*sent)[0] == b'abc'


@on_loops
async def test_to_another_origin_a_body_is_sent_as_it_is():
    script, other_script = Answering(OK), Answering(OK)
    async with Server(script) as server, Server(other_script) as other, pool() as request:
        send = signed(request, credentials, 's3', 'eu-west-2', origin=server.origin)
        for url in (server.url, other.url):
            await send(b'PUT', url, body=streamed(b'abc'))
            await send(b'PUT', url, headers=of_length(3), body=yielding, body_args=(b'a', b'bc'))
        # What could not be encoded is nobody's business there.
        await send(b'PUT', other.url, headers=((b'transfer-encoding', b'chunked'),),
                   body=streamed(b'3\r\nabc\r\n0\r\n\r\n'))
    assert [received(*sent)[0] for sent in zip(script.heads, script.bodies, strict=True)] == \
        [b'abc', b'abc']
    assert other_script.bodies == [b'abc', b'abc', b'3\r\nabc\r\n0\r\n\r\n']
    for head in other_script.heads:
        assert not re.search(rb'(?i)\r\n(x-amz-|authorization|content-encoding)', head)


@on_loops
async def test_who_signs_around_it_hears_of_the_signature():
    signatures = []
    async with Server(script := Answering(OK)) as server, pool() as request:
        send = signed(request, credentials, 's3', 'eu-west-2')
        await send(b'PUT', server.url, body=streamed(b'abc'), on_signed=signatures.append)
        await send(b'GET', server.url, on_signed=signatures.append)
    assert [signature.value for signature in signatures] == list(map(check_head, script.heads))


class Changing:
    """Credentials that are others for each request."""

    def __init__(self):
        self.count = 0

    async def __call__(self):
        self.count += 1
        return 'AKID', 'secret', ((b'x-amz-security-token', b'%d' % self.count),)


@all_forms
@on_loops
async def test_a_request_that_is_made_again_is_signed_and_encoded_anew(form):
    async def body():
        nonlocal calls
        calls += 1
        yield b'a' * 70_000
        yield b'b'

    calls = 0
    script = Answering(response(503), None, OK)
    async with Server(script) as server, pool() as request:
        send = retry(signed(request, Changing(), 's3', 'eu-west-2', **form),
                     code_intervals=((b'503', (0,)),))
        code, _, _ = await send(b'PUT', server.url, headers=of_length(70_001), body=body)
    assert (code, calls) == (b'200', 3)
    assert [value(head, b'x-amz-security-token') for head in script.heads] == [b'1', b'2', b'3']
    for sent in zip(script.heads, script.bodies, strict=True):
        assert received(*sent)[0] == b'a' * 70_000 + b'b'


@all_forms
@on_loops
async def test_a_layer_below_sends_the_same_again(form):
    script = Answering(None, OK)
    async with Server(script) as server, pool() as request:
        send = signed(retry(request), credentials, 's3', 'eu-west-2', **form)
        code, _, _ = await send(b'PUT', server.url, body=streamed(b'a' * 70_000))
    assert code == b'200'
    assert script.heads[0] == script.heads[1]
    assert script.bodies[0] == script.bodies[1]
    assert received(script.heads[1], script.bodies[1])[0] == b'a' * 70_000


@pytest.mark.parametrize('is_around', [True, False])
@on_loops
async def test_a_body_that_can_be_read_once_is_not_sent_empty(is_around):
    def retrying(request):
        return retry(request, code_intervals=((b'503', (0,)),))

    def signing(request):
        return signed(request, credentials, 's3', 'eu-west-2')

    chunks = yielding(b'abc')
    script = Answering(response(503), OK)
    async with Server(script) as server, pool() as request:
        send = retrying(signing(request)) if is_around else signing(retrying(request))
        error = await failed(
            send(b'PUT', server.url, headers=of_length(3), body=lambda: chunks),
            HttpDataError, HttpConnectionError)
    assert 'body must return a new async iterator at each call' in str(error)
    assert len(script.heads) == 1


@all_forms
@on_loops
async def test_a_body_is_freed_without_the_garbage_collector(form):
    async with Server(Answering(OK, response(403))) as server, pool() as request:
        send = signed(request, credentials, 's3', 'eu-west-2', **form)
        gc.disable()
        try:
            for _ in range(2):
                body = streamed(b'a' * 100_000)
                alive = weakref.ref(body)
                await send(b'PUT', server.url, body=body)
                del body
                assert alive() is None
        finally:
            gc.enable()


# ----------------------------------------------------------------------------- what is refused

LENGTH_NEEDED = (
    'headers must have one content-length, with the length of the body before it is encoded, got '
    '{}. If it is not known, a multipart upload can send the body in parts')
NOT_THERE = ('headers must not have {} when the body is sent as aws-chunked: this layer adds what '
             'tells of the encoded body, and the checksum')


@pytest.mark.parametrize('headers, message', [
    ((), LENGTH_NEEDED.format('[]')),
    (of_length(3) * 2, LENGTH_NEEDED.format("[b'3', b'3']")),
    (((b'content-length', b'+3'),), LENGTH_NEEDED.format("[b'+3']")),
    (((b'Transfer-Encoding', b'chunked'),), NOT_THERE.format('transfer-encoding')),
    ((*of_length(3), (b'X-Amz-Trailer', b'a')), NOT_THERE.format('x-amz-trailer')),
    ((*of_length(3), (b'x-amz-checksum-sha1', b'a')), NOT_THERE.format('x-amz-checksum-sha1')),
    ((*of_length(3), (b'x-amz-decoded-content-length', b'3')),
     NOT_THERE.format('x-amz-decoded-content-length')),
])
@on_loops
async def test_headers_that_cannot_be(headers, message):
    async with pool() as request:
        await failed(
            signed(request, credentials, 's3', 'eu-west-2')(
                b'PUT', 'http://127.0.0.1:1/', headers=headers, body=yielding,
                body_args=(b'abc',)),
            HttpConnectionError, ValueError,
            f'signing a request for s3 in eu-west-2 failed: ValueError: {message}')


BAD = {
    'md5': ({'checksum': 'md5'}, ValueError,
            'checksum must be one of crc32c, crc64nvme, crc32, sha1, sha256, got \'md5\''),
    'bytes': ({'checksum': b'crc32'}, ValueError,
              'checksum must be one of crc32c, crc64nvme, crc32, sha1, sha256, got b\'crc32\''),
    'unhashable': ({'checksum': ['crc32']}, ValueError,
                   'checksum must be one of crc32c, crc64nvme, crc32, sha1, sha256, '
                   'got [\'crc32\']'),
    'neither': ({'checksum': None}, ValueError,
                'checksum must not be None when signed_payload is False: an aws-chunked body has '
                'a checksum, or signatures. lowhaio_aws_sigv4_unsigned_payload sends bodies with '
                'neither'),
    'no bool': ({'signed_payload': 1}, TypeError,
                'signed_payload must be True or False, got 1'),
}


@pytest.mark.parametrize('options, kind, message', BAD.values(), ids=BAD)
@on_loops
async def test_forms_that_cannot_be(options, kind, message):
    with pytest.raises(kind) as caught:
        signed(print, credentials, 's3', 'eu-west-2', **options)
    assert str(caught.value) == message
    async with pool() as request:
        await failed(
            signed(request, credentials, 's3', 'eu-west-2')(
                b'PUT', 'http://127.0.0.1:1/', body=streamed(b'abc'), **options),
            HttpConnectionError, kind,
            f'signing a request for s3 in eu-west-2 failed: {kind.__name__}: {message}')


def test_bad_arguments_fail_at_once():
    with pytest.raises(TypeError, match='^request must be a coroutine function, got NoneType$'):
        signed(None, credentials, 's3', 'eu-west-2')
    with pytest.raises(TypeError, match='^credentials must be a coroutine function, got None'):
        signed(print, None, 's3', 'eu-west-2')
    with pytest.raises(TypeError, match='^request must be a coroutine function, got NoneType$'):
        checked(None)


# ---------------------------------------------------------------------------------- checksums

@pytest.mark.parametrize('name', CHECK_VALUES)
def test_checksums(name):
    made = checksum(name)
    assert made.name == name
    for piece in (b'123', memoryview(b'45'), bytearray(b''), b'6789'):
        made.update(piece)
    assert made.digest().hex() == CHECK_VALUES[name]
    assert made.base64() == base64_of(name, b'123456789')
    assert repr(made) == f'<Checksum {name} {base64_of(name, b"123456789").decode()}>'


def test_the_fastest_is_the_first():
    assert available_checksums() == ('crc32c', 'crc64nvme', 'crc32', 'sha1', 'sha256')


@pytest.fixture
def loaded_again():
    """The module as it is where other things are installed."""
    def load():
        spec = importlib.util.spec_from_file_location(
            'again', lowhaio_aws_sigv4_streaming.__file__)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def test_without_awscrt(monkeypatch, loaded_again):
    monkeypatch.setitem(sys.modules, 'awscrt.checksums', None)
    module = loaded_again()
    assert module.available_checksums() == ('crc32', 'sha1', 'sha256')
    for name in ('crc32c', 'crc64nvme'):
        with pytest.raises(ValueError, match='checksum must be') as caught:
            module.checksum(name)
        assert str(caught.value) == (
            f"checksum must be one of crc32, sha1, sha256, got '{name}': for {name}, install the "
            'package awscrt')


def test_awscrt_is_imported_when_a_layer_is_made(monkeypatch, loaded_again):
    """It takes so long that no response should have to wait for it."""
    for make in (lambda module: module.checked(print),
                 lambda module: module.signed(print, credentials, 's3', 'eu-west-2')):
        module = loaded_again()
        make(module)
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, 'awscrt.checksums', None)
            assert 'crc64nvme' in module.available_checksums()


def test_with_an_awscrt_that_has_no_crc64nvme(monkeypatch, loaded_again):
    old = types.ModuleType('awscrt.checksums')
    old.crc32c = awscrt.checksums.crc32c
    monkeypatch.setitem(sys.modules, 'awscrt.checksums', old)
    assert loaded_again().available_checksums() == ('crc32c', 'crc32', 'sha1', 'sha256')


# ---------------------------------------------------------------------------------- downloads

CONTENT = b'The content, ' * 10_000


def sums(*names, content=CONTENT):
    return [f'x-amz-checksum-{name}: {base64_of(name, content).decode()}'.encode()
            for name in names]


def of_wrong(*names):
    return sums(*names, content=b'another content')


async def downloaded(raw, method=b'GET', headers=()):
    """What `checked` makes of a response, and the head of the request."""
    script = Answering(raw)
    async with Server(script) as server, pool() as request:
        _, _, body = await checked(request)(method, server.url, headers=headers)
        assert (await buffered(body)) == (b'' if method == b'HEAD' else CONTENT)
    return isinstance(body, CheckedBody), script.heads[0]


@pytest.mark.parametrize('name', CHECK_VALUES)
@on_loops
async def test_a_good_content(name):
    assert (await downloaded(response(200, CONTENT, *sums(name))))[0]


@pytest.mark.parametrize('name', CHECK_VALUES)
@on_loops
async def test_a_bad_content(name):
    bad = CONTENT.replace(b'content', b'CONTENT', 1)
    script = Answering(response(200, bad, *sums(name)), OK)
    async with Server(script) as server, pool() as request:
        _, _, body = await checked(request)(b'GET', server.url)
        error = await failed(
            buffered(body), ChecksumError, None,
            f'checking the response body failed: its {name} should be '
            f'{base64_of(name, CONTENT)!r}, as the server has sent, but is '
            f'{base64_of(name, bad)!r}')
        assert isinstance(error, HttpDataError)
        assert (error.response_started, error.phase, error.reused) == (True, 'content', False)
        assert (error.algorithm, error.expected, error.actual) == (
            name, base64_of(name, CONTENT), base64_of(name, bad))
        for copied in (copy.copy(error), pickle.loads(pickle.dumps(error))):
            assert (type(copied), str(copied)) == (ChecksumError, str(error))
        # Nothing is an end, however often it is asked for.
        await failed(anext(body), ChecksumError, None)
        await body.aclose()
        await get(request, server.url)
    # All of the response has come, so its connection serves the next one.
    assert script.connections == [0, 0]


NOT_CHECKED = {
    'none': response(200, CONTENT),
    'an unknown one': response(200, CONTENT, b'x-amz-checksum-md5: AAAA'),
    'of checksums': response(200, CONTENT, b'x-amz-checksum-crc32: AAAAAA==-3'),
    'said to be of checksums': response(200, CONTENT, b'x-amz-checksum-type: composite',
                                        *of_wrong('crc32')),
    'of another size': response(200, CONTENT, b'x-amz-checksum-crc32: AAAAAAAAAAA='),
    'a part': response(206, CONTENT, b'content-range: bytes 0-129999/200000',
                       *of_wrong('crc32')),
    'a part in a 200': response(200, CONTENT, b'content-range: bytes 0-129999/200000',
                                *of_wrong('crc32')),
    'an error': response(404, CONTENT, *of_wrong('crc32')),
    'no length': b'HTTP/1.1 200 OK\r\nconnection: close\r\n%b\r\n\r\n%b' % (
        of_wrong('crc32')[0], CONTENT),
}


@pytest.mark.parametrize('raw', NOT_CHECKED.values(), ids=NOT_CHECKED)
@on_loops
async def test_what_is_not_checked(raw):
    script = Answering(raw, close_after=True)
    async with Server(script) as server, pool() as request:
        _, _, body = await checked(request)(b'GET', server.url)
        # It costs nothing then.
        assert type(body).__module__ == 'lowhaio'
        assert await buffered(body) == CONTENT


@pytest.mark.parametrize('method', [b'HEAD', b'PUT', b'POST', b'DELETE'])
@on_loops
async def test_the_responses_of_other_methods_are_not_checked(method):
    raw = response(200, CONTENT, *of_wrong('crc32'))
    is_checked, head = await downloaded(
        raw[:-len(CONTENT)] if method == b'HEAD' else raw, method)
    assert not is_checked
    assert values_of(head, b'x-amz-checksum-mode') == []


@on_loops
async def test_of_several_the_fastest_is_checked():
    assert (await downloaded(response(
        200, CONTENT, b'x-amz-checksum-type: FULL_OBJECT', *of_wrong('sha256', 'sha1', 'crc32'),
        *sums('crc64nvme'), b'x-amz-checksum-crc32c: AAAAAA==-3')))[0]


@on_loops
async def test_a_checksum_is_asked_for_once():
    raw = response(200, CONTENT)
    _, head = await downloaded(raw, headers=iter(((b'x-a', b'b'),)))
    assert head.endswith(b'\r\nx-a: b\r\nx-amz-checksum-mode: ENABLED\r\n\r\n')
    _, head = await downloaded(raw, headers=((b'X-Amz-Checksum-Mode', b'enabled'),))
    assert values_of(head, b'x-amz-checksum-mode') == [b'enabled']


@on_loops
async def test_what_asks_is_signed():
    script = Answering(response(200, CONTENT, *sums('crc32')))
    async with Server(script) as server, pool() as request:
        send = checked(signed(request, credentials, 's3', 'eu-west-2'))
        _, _, body = await send(b'GET', server.url)
        assert await buffered(body) == CONTENT
        await send(b'PUT', server.url, body=streamed(b'abc'))
    get_head, put_head = script.heads
    check_head(get_head)
    assert b';x-amz-checksum-mode;' in value(get_head, b'authorization')
    assert received(put_head, script.bodies[1])[0] == b'abc'


@pytest.mark.parametrize('headers', [1, [b'a'], ((1, 2),)])
@on_loops
async def test_bad_headers_fail_before_anything_is_sent(headers):
    async with pool() as request:
        for response in (
                checked(request)(b'GET', 'http://127.0.0.1:1/', headers=headers),
                signed(request, credentials, 's3', 'eu-west-2')(
                    b'PUT', 'http://127.0.0.1:1/', headers=headers, body=streamed(b'abc'))):
            error = await failed(response, HttpConnectionError, None,
                                 'headers must be pairs of name and value, both bytes')
            assert error.phase == 'refused'
            assert type(error.__cause__) in (AttributeError, TypeError, ValueError)


@on_loops
async def test_a_body_that_is_closed_before_its_end_is_no_bad_content():
    async def script(peer):
        await peer.read_head()
        await peer.send(raw[:-1000])
        ends.append(await peer.closed())

    raw, ends = response(200, CONTENT, *sums('crc32')), []
    async with Server(script) as server, pool() as request:
        _, _, body = await checked(request)(b'GET', server.url)
        await anext(body)
        await body.aclose()
        await body.aclose()
        await failed(anext(body), HttpDataError, ConnectionAbortedError)
        _, _, body = await checked(request)(b'GET', server.url)
        del body
        await until(lambda: len(ends) == 2)


@on_loops
async def test_a_content_that_is_cut_short_is_an_error_of_the_connection():
    async def script(peer):
        await peer.read_head()
        await peer.send(raw[:-1])

    raw = response(200, CONTENT, *sums('crc32'))
    async with Server(script) as server, pool() as request:
        _, _, body = await checked(request)(b'GET', server.url)
        with pytest.raises(HttpDataError, match='the peer closed the connection') as caught:
            await buffered(body)
    assert not isinstance(caught.value, ChecksumError)


@on_loops
async def test_what_the_body_tells_is_that_of_the_pool():
    script = Answering(response(200, CONTENT, *sums('crc32')))
    async with Server(script) as server, pool() as request:
        _, _, body = await checked(request)(b'GET', server.url)
        assert repr(body).startswith(
            f'<CheckedBody <Check <Checksum crc32 AAAAAA==> '
            f'expected={base64_of("crc32", CONTENT).decode()}> of <')
        assert body.connection.peer == ('127.0.0.1', server.port)
        assert (body.http_version, body.reason, body.request_sent) == (
            b'HTTP/1.1', b'Reason', True)
        assert body.trailers == ()
        with pytest.raises(HttpDataError):
            await body.send(b'a')
        with pytest.raises(AttributeError):
            body.unknown  # noqa: B018
        await buffered(body)


def test_a_download_from_several_responses():
    headers = ((b'content-length', b'130000'), (b'x-amz-checksum-crc32c',
                                                base64_of('crc32c', CONTENT)))
    assert check_of(b'GET', b'206', headers) is None
    for last in (CONTENT[7:], CONTENT[8:]):
        check = check_of(b'GET', b'200', headers)
        assert isinstance(check, Check)
        assert (check.algorithm, check.expected) == ('crc32c', base64_of('crc32c', CONTENT))
        check.update(CONTENT[:3])
        check.update(memoryview(CONTENT)[3:7])
        check.update(last)
        if last == CONTENT[7:]:
            check.finish()
        else:
            with pytest.raises(ChecksumError):
                check.finish()


# --------------------------------------------------------------------------------- the rest

@on_loops
async def test_what_things_look_like():
    async def seeing(method, url, *, body, **kwargs):
        chunks = body()
        reprs.append(repr(chunks))
        async for _ in chunks:
            reprs.append(repr(chunks))

    for form, coding in (({}, 'unsigned <Checksum crc32 AAAAAA==>'),
                         ({'checksum': None, 'signed_payload': True}, 'signed None')):
        reprs = []
        await signed(seeing, credentials, 's3', 'eu-west-2', **form)(
            b'PUT', 'https://a.example/', body=streamed(b'abc'))
        assert [re.sub('of <(?!E).*', 'of …', each) for each in reprs] == [
            f'<EncodedBody 3 bytes left <Encoder {coding}> of …',
            f'<EncodedBody 0 bytes left <Encoder {coding}> of …'.replace('AAAAAA', 'NSRBwg'),
            '<EncodedBody has ended of …']
    coding = lowhaio_aws_sigv4_streaming.Coding('crc32', True)
    assert repr(coding) == f'<Coding {SIGNED}-TRAILER crc32>'
    upload = lowhaio_aws_sigv4_streaming.Upload(coding, 3, None)
    assert repr(upload) == f'<Upload of 3 bytes not signed {coding!r}>'


def test_the_example_of_the_readme(capsys):
    script = Answering(response(200), response(200, b'line\n' * 20_000, *sums(
        'crc32', content=b'line\n' * 20_000)))
    with internet(script, '*.s3.eu-west-2.amazonaws.com'):
        for block in python_blocks(pathlib.Path(__file__).with_name('README.md')):
            run_block(block)
    assert script.lines == ['PUT /lines.txt', 'GET /lines.txt']
    assert capsys.readouterr().out == '200\n200 100000\n'
    assert decoded(script.bodies[0], None, b'x-amz-checksum-crc32')[0] == b'line\n' * 20_000
