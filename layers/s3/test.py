"""Tests of lowhaio_s3, with a server in memory that can be told to fail.

Servers that others have written are in tests/outside/test_s3_layer.py.
"""

import asyncio
import base64
import contextlib
import gc
import errno
import hashlib
import os
import pathlib
import pickle
import re
import resource
import signal
import socket
import tracemalloc
import urllib.parse
import weakref
import zlib
from datetime import UTC, datetime
from xml.etree import ElementTree
from xml.parsers import expat
from xml.sax.saxutils import escape

import lowhaio_retry
import lowhaio_s3
import pytest

from lowhaio import (
    HttpConnectionClosedError,
    HttpConnectionError,
    HttpDataError,
    Phase,
    streamed,
)
from lowhaio_aws_sigv4_streaming import checksum
from lowhaio_s3 import (
    Bucket,
    ChecksumError,
    ListedObject,
    ObjectInfo,
    Page,
    S3Busy,
    S3CredentialsRefused,
    S3DeleteError,
    S3Error,
    S3NotFound,
    S3NotModified,
    S3PreconditionFailed,
)
from tests.harness import (
    Server,
    cancelling,
    certified,
    head as head_of,
    internet,
    on_loops,
    on_one_loop,
    pool,
    python_blocks,
    response,
    run_block,
    socket_to,
    trusting,
    turns,
    until,
    value,
    values_of,
)

HERE = pathlib.Path(__file__).parent
MIB = 2 ** 20
PART = 5 * MIB
# As large as three parts, the last of which is a short one.
LARGE = bytes(range(251)) * (2 * PART // 251 + 1)
XMLNS = 'http://s3.amazonaws.com/doc/2006-03-01/'
DATE = b'last-modified: Sun, 29 Nov 2026 10:00:00 GMT'


async def credentials():
    return 'AKID', 'secret', ()


def etag_of(data):
    return f'"{hashlib.md5(data).hexdigest()}"'


def fault(status, code='', message='', *fields):
    """A response of S3 that tells of an error."""
    return response(status, xml(
        'Error', f'<Code>{code}</Code><Message>{message}</Message>'
        '<RequestId>id-in-body</RequestId><HostId>host</HostId>'), *fields)


def xml(name, content):
    return f'<?xml version="1.0"?>\n<{name} xmlns="{XMLNS}">{content}</{name}>'.encode()


class Cut(bytes):
    """A response after which the connection is closed."""


class Store:
    """A server of S3's protocol, for one bucket. It keeps in `asked` what it is asked for.

    What it is told with `answer` comes first: a response, None to close the connection, or a
    function of the head and the body that returns one of these, or False to go on as usual.
    """

    def __init__(self, path='/bucket'):
        self.path = path
        self.objects = {}
        self.fields = {}
        self.uploads = {}
        self.asked = []
        self.heads = []
        self.bodies = []
        self.answers = []
        self.ignores_conditions = False

    def answer(self, pattern, *answers):
        self.answers += [(re.compile(pattern), each) for each in answers]

    async def __call__(self, peer):
        while True:
            head = await peer.read_head()
            body = await peer.read_body(head)
            line = head.partition(b' HTTP/')[0].decode()
            self.asked.append(line)
            self.heads.append(head)
            self.bodies.append(body)
            answer = next((pair for pair in self.answers if pair[0].fullmatch(line)), None)
            result = False
            if answer is not None:
                self.answers.remove(answer)
                result = answer[1]
                if callable(result):
                    result = result(head, body)
                if asyncio.iscoroutine(result):
                    result = await result
            if result is False:
                method, target = line.split(' ')
                path, _, query = target.partition('?')
                key = urllib.parse.unquote(path).removeprefix(self.path)[1:]
                params = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
                result = getattr(self, method.lower())(key, params, head, body)
            if result is None:
                return
            await peer.send(result)
            if isinstance(result, Cut):
                return

    def get(self, key, params, head, body, *, is_head=False):
        if not key:
            return self.listing(params)
        if key not in self.objects:
            return response(404) if is_head else fault(404, 'NoSuchKey', 'There is none.')
        data = self.objects[key]
        etag = etag_of(data).encode()
        fields = [b'etag: ' + etag, DATE, *self.fields.get(key, ())]
        if not self.ignores_conditions:
            if value(head, b'if-match') not in (None, b'*', etag):
                return fault(412, 'PreconditionFailed', 'It is another one.')
            if value(head, b'if-none-match') == etag:
                return head_of(*fields, start=b'HTTP/1.1 304 Not Modified')
        if is_head:
            return head_of(*fields, b'content-length: %d' % len(data))
        asked = value(head, b'range')
        if asked is None:
            return response(200, data, *fields)
        first, last = asked.removeprefix(b'bytes=').split(b'-')
        start = int(first) if first else max(0, len(data) - int(last))
        stop = min(int(last) + 1, len(data)) if first and last else len(data)
        if start >= len(data):
            return fault(416, 'InvalidRange', 'It is not that long.')
        return response(206, data[start:stop], *fields,
                        b'content-range: bytes %d-%d/%d' % (start, stop - 1, len(data)))

    def head(self, key, params, head, body):
        return self.get(key, params, head, body, is_head=True)

    def put(self, key, params, head, body):
        sha = value(head, b'x-amz-content-sha256')
        assert sha in (b'UNSIGNED-PAYLOAD', hashlib.sha256(body).hexdigest().encode())
        source = value(head, b'x-amz-copy-source')
        if source is not None:
            path = urllib.parse.unquote(source.decode().partition('?')[0])
            body = self.objects[path.split('/', 2)[2]]
            if copied := value(head, b'x-amz-copy-source-range'):
                first, last = copied.removeprefix(b'bytes=').split(b'-')
                body = body[int(first):int(last) + 1]
        etag = etag_of(body)
        if 'uploadId' in params:
            if params['uploadId'] not in self.uploads:
                # It was aborted while this part was on its way.
                return fault(404, 'NoSuchUpload', 'There is none.')
            self.uploads[params['uploadId']][int(params['partNumber'])] = body
        elif value(head, b'if-none-match') == b'*' and key in self.objects:
            return fault(412, 'PreconditionFailed', 'There is one.')
        else:
            self.objects[key] = body
        if source is not None:
            return response(200, xml('CopyObjectResult', f'<ETag>{escape(etag)}</ETag>'))
        return response(200, b'', f'etag: {etag}'.encode(), b'x-amz-version-id: v1')

    def post(self, key, params, head, body):
        if 'delete' in params:
            assert value(head, b'content-md5') == base64.b64encode(hashlib.md5(body).digest())
            for name in ElementTree.fromstring(body).iterfind('{*}Object/{*}Key'):
                self.objects.pop(name.text, None)
            return response(200, xml('DeleteResult', ''))
        if 'uploads' in params:
            self.uploads[f'upload {len(self.uploads)}'] = {}
            return response(200, xml('InitiateMultipartUploadResult',
                                     f'<UploadId>upload {len(self.uploads) - 1}</UploadId>'))
        parts = self.uploads.pop(params['uploadId'])
        told = {int(part.findtext('{*}PartNumber')): part.findtext('{*}ETag')
                for part in ElementTree.fromstring(body).iterfind('{*}Part')}
        assert told == {number: etag_of(data) for number, data in parts.items()}
        assert list(told) == list(range(1, len(told) + 1))
        self.objects[key] = b''.join(parts[number] for number in told)
        digests = b''.join(hashlib.md5(parts[number]).digest() for number in told)
        etag = f'"{hashlib.md5(digests).hexdigest()}-{len(told)}"'
        return response(200, b'\n\n ' + xml(
            'CompleteMultipartUploadResult', f'<ETag>{escape(etag)}</ETag>'))

    def delete(self, key, params, head, body):
        if 'uploadId' in params:
            self.uploads.pop(params['uploadId'], None)
        else:
            self.objects.pop(key, None)
        return b'HTTP/1.1 204 No Content\r\n\r\n'

    def listing(self, params):
        prefix, delimiter = params.get('prefix', ''), params.get('delimiter', '')
        after = params.get('continuation-token', params.get('start-after', ''))
        found, prefixes = [], []
        for key in sorted(self.objects):
            if not key.startswith(prefix) or key <= after:
                continue
            rest = key[len(prefix):]
            if delimiter and delimiter in rest:
                common = prefix + rest.partition(delimiter)[0] + delimiter
                prefixes += [common] if common not in prefixes else []
            elif len(found) < int(params['max-keys']):
                found.append(key)
        quoted = urllib.parse.quote_plus
        more = (f'<NextContinuationToken>{escape(found[-1])}</NextContinuationToken>'
                if len(found) == int(params['max-keys']) else '')
        return response(200, xml('ListBucketResult', more + '<EncodingType>url</EncodingType>' + (
            ''.join(f'<Contents><Key>{quoted(key)}</Key><Size>{len(self.objects[key])}</Size>'
                    f'<ETag>{etag_of(self.objects[key]).replace(chr(34), "&quot;")}</ETag>'
                    '<LastModified>2026-11-29T10:00:00.000Z</LastModified>'
                    '<StorageClass>STANDARD</StorageClass></Contents>' for key in found)
            + ''.join(f'<CommonPrefixes><Prefix>{quoted(each)}</Prefix></CommonPrefixes>'
                      for each in prefixes))))


@contextlib.asynccontextmanager
async def bucket(context=None, pool_options=(), **options):
    """A bucket, and the store that is behind it."""
    store = Store()
    async with Server(store, context) as server, pool(**dict(pool_options)) as request:
        store.request, store.origin = request, server.origin
        yield Bucket(request, 'bucket', options.pop('credentials', credentials), 'us-east-1',
                     endpoint=options.pop('endpoint', server.origin), **options), store


@pytest.fixture(autouse=True)
def slept(monkeypatch):
    """Lets no time pass between two attempts, but notes the seconds that would have."""
    seconds = []
    sleep = asyncio.sleep

    async def sleep_at_once(delay):
        seconds.append(delay)
        await sleep(0)

    monkeypatch.setattr(lowhaio_retry, 'sleep', sleep_at_once)
    monkeypatch.setattr(lowhaio_s3, 'sleep', sleep_at_once)
    return seconds


def lines(store, prefix=''):
    return [line for line in store.asked if line.startswith(prefix)]


# --------------------------------------------------------------------------------- reading


@on_loops
async def test_what_is_put_can_be_got():
    async with bucket() as (s3, store):
        written = await s3.put('my key #1', b'The content', content_type='text/plain',
                               metadata={'Owner': 'me'})
        assert written == ('my key #1', etag_of(b'The content'), 'v1', 0, written.headers)
        store.fields['my key #1'] = (b'content-type: text/plain', b'x-amz-meta-owner: me',
                                     b'x-amz-version-id: v1')
        content = await s3.get('my key #1')
        assert [chunk async for chunk in content] == [b'The content']
        info = content.info
    assert store.asked == ['PUT /bucket/my%20key%20%231', 'GET /bucket/my%20key%20%231']
    assert value(store.heads[0], b'content-type') == b'text/plain'
    assert value(store.heads[0], b'x-amz-meta-owner') == b'me'
    assert value(store.heads[1], b'x-amz-checksum-mode') == b'ENABLED'
    assert (info.key, info.size, info.etag, info.modified, info.content_type, info.version,
            info.metadata, info.content_range) == (
        'my key #1', 11, etag_of(b'The content'), datetime(2026, 11, 29, 10, tzinfo=UTC),
        'text/plain', 'v1', {'owner': 'me'}, None)
    assert repr(info) == f'<ObjectInfo size=11 etag={info.etag!r}>'


def test_what_is_not_known_of_an_object():
    info = ObjectInfo('a', ((b'last-modified', b'yesterday'), (b'content-length', b'1x')))
    assert (info.size, info.modified, info.etag, info.version) == (None, None, '', '')
    assert ObjectInfo('a', ()).modified is None
    far = b'Fri, 31 Dec 9999 23:59:59 -1200'
    assert ObjectInfo('a', ((b'last-modified', far),)).modified is None
    assert ObjectInfo('a', ((b'content-range', b'bytes 0-1/*'),)).size is None


@pytest.mark.parametrize('start, stop, field, expected', [
    (1, None, b'bytes=1-', b'123456789'), (0, 4, b'bytes=0-3', b'0123'),
    (2, 5, b'bytes=2-4', b'234'), (-3, None, b'bytes=-3', b'789'),
    (7, 99, b'bytes=7-98', b'789'), (-99, None, b'bytes=-99', b'0123456789')])
@on_one_loop
async def test_a_slice_of_an_object(start, stop, field, expected):
    async with bucket() as (s3, store):
        store.objects['a'] = b'0123456789'
        content = await s3.get('a', start=start, stop=stop)
        assert await content.read() == expected
        assert content.info.size == 10
    assert value(store.heads[0], b'range') == field
    # A checksum would be that of the whole object.
    assert value(store.heads[0], b'x-amz-checksum-mode') is None


@pytest.mark.parametrize('start, stop, kind, message', [
    (3, 3, ValueError, 'of a slice that is not empty, and a negative start has no stop, got 3 '),
    (-3, 3, ValueError, 'got -3 and 3'), (1.0, None, TypeError, 'start must be an int, got float'),
    (0, '1', TypeError, 'stop must be an int, got str')])
@on_one_loop
async def test_what_is_no_slice(start, stop, kind, message):
    async with bucket() as (s3, _):
        with pytest.raises(kind, match=message):
            await s3.get('a', start=start, stop=stop)


@pytest.mark.parametrize('status', [200, 206])
@on_one_loop
async def test_a_range_may_come_with_any_status(status):
    async with bucket() as (s3, store):
        store.answer('GET .*', response(status, b'12', b'content-range: bytes 1-2/*'))
        content = await s3.get('a', start=1, stop=3)
        assert (await content.read(), content.info.size) == (b'12', None)


@pytest.mark.parametrize('start, stop, fields, got', [
    (1, 3, (), 'the whole object'), (0, 1, (), 'the whole object'),
    (1, 3, (b'content-range: bytes 2-3/10',), 'bytes 2 to 4 of 10'),
    (0, 1, (b'content-range: bytes 0-0/0',), 'bytes 0 to 1 of 0'),
    (1, 3, (b'content-range: bytes 1-3/10',), 'bytes 1 to 4 of 10'),
    (1, None, (b'content-range: bytes 1-2/10',), 'bytes 1 to 3 of 10'),
    (1, 5, (b'content-range: bytes 1-2/10',), 'bytes 1 to 3 of 10'),
    (1, 5, (b'content-range: bytes 1-2/*',), 'bytes 1 to 3 of None'),
    (-2, None, (b'content-range: bytes 1-2/10',), 'bytes 1 to 3 of 10'),
    (-2, None, (b'content-range: bytes 7-9/10',), 'bytes 7 to 10 of 10'),
    (-2, None, (b'content-range: bytes 8-9/*',), 'bytes 8 to 10 of None'),
    (0, None, (b'content-range: bytes 8-9/10',), 'bytes 8 to 10 of 10')])
@on_one_loop
async def test_another_range_than_was_asked_for(start, stop, fields, got):
    async with bucket() as (s3, store):
        store.answer('GET .*', response(200, b'12', *fields))
        with pytest.raises(S3Error) as raised:
            await s3.get('a', start=start, stop=stop)
        assert str(raised.value) == (
            f'the bytes {start} to {stop} were asked for, but the server sent {got}')


@on_one_loop
async def test_a_short_object_may_come_whole():
    async with bucket() as (s3, store):
        store.answer('GET .*', response(200, b'12'))
        assert await (await s3.get('a', start=0, stop=2)).read() == b'12'


def slice_of(data, start, stop, told, *fields):
    """A part of what has ten bytes, which is said to end elsewhere."""
    return response(206, data[start:stop], b'etag: "a"',
                    b'content-range: bytes %d-%d/10' % (start, told - 1), *fields)


@pytest.mark.parametrize('sent', [6, 9])
@on_loops
async def test_content_that_is_not_as_long_as_its_range(sent, tmp_path):
    """Another part would be overwritten, or miss its turn."""
    data = b'0123456789'
    async with bucket(parallel=2, pool_options={'max_connections': 2}) as (s3, store):
        for ask in (lambda: read(s3.get('a', start=5, stop=8)),
                    lambda: s3.download('a', tmp_path / 'a', part_size=5),
                    lambda: s3.download('a', print, part_size=5)):
            store.answers.clear()
            store.answer('GET .*', *[lambda head, body: slice_of(
                data, 0, 5, 5) if b'bytes=0-4' in head else slice_of(
                data, 5, sent, 8 if b'bytes=5-7' in head else 10)] * 2)
            with pytest.raises(HttpDataError, match='up to byte (8|10), but its content '
                                                    '(ended|went on) at byte') as raised:
                await ask()
            assert (raised.value.phase, raised.value.response_started) == (Phase.CONTENT, True)
    assert os.listdir(tmp_path) == []


async def read(getting):
    return await (await getting).read()


@on_loops
async def test_conditions_of_reading():
    async with bucket() as (s3, store):
        store.objects['a'] = b'1'
        etag = etag_of(b'1')
        assert (await s3.head('a', if_match=etag)).etag == etag
        assert await (await s3.get('a', if_match='*', headers=((b'x-a', b'1'),))).read() == b'1'
        for ask in (s3.get, s3.head):
            with pytest.raises(S3NotModified, match='304 Not Modified'):
                await ask('a', if_none_match=etag)
        with pytest.raises(S3PreconditionFailed, match='412 PreconditionFailed: It is another'):
            await s3.get('a', if_match='"b"')
        # Some servers do not look at it.
        store.ignores_conditions = True
        with pytest.raises(S3PreconditionFailed) as raised:
            await s3.get('a', if_match='"b"')
        assert str(raised.value) == f'the object must have the ETag "b", got {etag}'
    assert value(store.heads[1], b'x-a') == b'1'


@on_loops
async def test_a_version():
    async with bucket() as (s3, store):
        store.objects['a'] = b'1'
        await (await s3.get('a', version='x&y')).read()
        await s3.head('a', version='v')
        await s3.delete('a', version='v')
    assert store.asked == ['GET /bucket/a?versionId=x%26y', 'HEAD /bucket/a?versionId=v',
                           'DELETE /bucket/a?versionId=v']


@on_loops
async def test_content_can_be_closed_and_is_closed():
    async with bucket(pool_options={'max_connections': 1}) as (s3, store):
        store.objects['a'] = bytes(10 * MIB)
        async with await s3.get('a') as content:
            await anext(content)
            assert content.http_version == b'HTTP/1.1'
            assert repr(content).startswith('<Content ')
        with pytest.raises(HttpDataError, match='closed before its end') as raised:
            await anext(content)
        assert raised.value.phase == Phase.CONTENT
        await (await s3.get('a')).aclose()
        content = await s3.get('a')
        del content
        assert len(await (await s3.get('a')).read()) == 10 * MIB
    assert len(store.asked) == 4


# ------------------------------------------------------------------------ where it broke off


def begun(data, at, *fields):
    """A response to a GET that breaks off after so many bytes."""
    whole = response(200, data, b'etag: ' + etag_of(data).encode(), *fields)
    return Cut(whole[:len(whole) - len(data) + at])


def unended(*fields):
    """A chunked response whose last chunk is missing."""
    return Cut(head_of(b'transfer-encoding: chunked', *fields) + b'5\r\n12345\r\n')


@on_loops
async def test_an_object_goes_on_where_the_connection_broke_off(slept):
    data = bytes(range(200))
    async with bucket() as (s3, store):
        store.objects['a'] = data
        store.answer('GET .*', begun(data, 50, b'x-amz-version-id: v1'), None, None, False, Cut(
            response(206, data[50:], b'content-range: bytes 50-199/200', b'etag: ' + etag_of(
                data).encode())[:-100]))
        content = await s3.get('a')
        assert await content.read() == data
        assert content.info.size == 200
    assert [value(head, b'range') for head in store.heads] == [
        None, b'bytes=50-199', b'bytes=50-199', b'bytes=50-199']
    assert [value(head, b'if-match') for head in store.heads] == [
        None, *3 * [etag_of(data).encode()]]
    assert set(lines(store)) == {'GET /bucket/a', 'GET /bucket/a?versionId=v1'}


@on_loops
async def test_a_slice_goes_on_where_the_connection_broke_off(slept):
    data = bytes(range(200))
    async with bucket() as (s3, store):
        store.objects['a'] = data
        store.answer('GET .*', Cut(response(
            206, data[10:20], b'content-range: bytes 10-19/200',
            b'etag: ' + etag_of(data).encode())[:-4]))
        assert await (await s3.get('a', start=10, stop=20)).read() == data[10:20]
    assert value(store.heads[1], b'range') == b'bytes=16-19'


@on_loops
async def test_each_byte_that_comes_allows_more_attempts(slept):
    data = bytes(range(20))
    etag = b'etag: ' + etag_of(data).encode()
    async with bucket() as (s3, store):
        store.answer('GET .*', begun(data, 1), *(
            Cut(response(206, data[at:], b'content-range: bytes %d-19/20' % at, etag)[:at - 19])
            for at in range(1, 19)))
        store.objects['a'] = data
        assert await (await s3.get('a')).read() == data
    assert len(store.asked) == 20


@on_loops
async def test_what_does_not_go_on_is_an_error(slept):
    data = bytes(range(20))
    rest = Cut(response(206, data[5:], b'content-range: bytes 5-19/20', b'etag: '
                        + etag_of(data).encode())[:-15])
    async with bucket() as (s3, store):
        store.answer('GET .*', begun(data, 5), *4 * [rest])
        content = await s3.get('a')
        assert await anext(content) == data[:5]
        with pytest.raises(HttpConnectionClosedError) as raised:
            await anext(content)
        assert raised.value.phase == Phase.CONTENT
    assert len(store.asked) == 5
    assert len(slept) == 4


@on_loops
async def test_an_object_whose_server_has_gone(slept):
    """Nothing was sent of the last request, but of the first one there was."""
    async with bucket(pool_options={'get_connection': lambda *args: connect(*args)}) as (
            s3, store):
        def begin(head, body):
            connect.fails = True
            return begun(b'something', 5)

        async def connect(scheme, host, port):
            if connect.fails:
                raise OSError('gone')
            return await socket_to(socket.AF_INET, (host, port))

        connect.fails = False
        store.answer('GET .*', begin)
        content = await s3.get('a')
        assert await anext(content) == b'somet'
        with pytest.raises(HttpConnectionClosedError) as raised:
            await anext(content)
        assert isinstance(raised.value.__cause__, HttpConnectionError)


@pytest.mark.parametrize('is_told', [True, False])
@on_loops
async def test_an_object_that_has_changed_does_not_go_on(is_told):
    async with bucket() as (s3, store):
        store.objects['a'] = b'something else, and longer'
        store.ignores_conditions = not is_told
        store.answer('GET .*', begun(b'something', 5))
        content = await s3.get('a')
        assert await anext(content) == b'somet'
        with pytest.raises(S3PreconditionFailed) as raised:
            await anext(content)
        assert isinstance(raised.value.__cause__, HttpConnectionClosedError)


@on_loops
async def test_the_rest_is_asked_for_with_the_same_fields_and_version(slept):
    key = b'x-amz-server-side-encryption-customer-key'
    async with bucket() as (s3, store):
        store.objects['a'] = bytes(20)
        store.answer('GET .*', begun(bytes(20), 5))
        content = await s3.get('a', version='v', headers=iter(
            ((key, b'secret'), (b'If-None-Match', b'"b"'))))
        assert await content.read() == bytes(20)
    assert [value(head, key) for head in store.heads] == [b'secret', b'secret']
    assert [value(head, b'if-none-match') for head in store.heads] == [b'"b"', None]
    assert store.asked == ['GET /bucket/a?versionId=v'] * 2


@on_loops
async def test_a_rest_without_content_does_not_end_the_object(slept):
    data = bytes(20)
    async with bucket() as (s3, store):
        store.answer('GET .*', begun(data, 5), response(
            206, b'', b'content-range: bytes 5-19/20', b'etag: ' + etag_of(data).encode()))
        with pytest.raises(HttpDataError, match='ended at byte 5') as raised:
            await (await s3.get('a')).read()
        assert isinstance(raised.value.__cause__, HttpConnectionClosedError)


@on_loops
async def test_what_goes_on_without_an_etag_may_be_another_object(slept):
    async with bucket() as (s3, store):
        store.answer('GET .*', begun(b'something', 5), response(
            206, b'else', b'content-range: bytes 5-8/9'))
        with pytest.raises(S3PreconditionFailed, match='must have the ETag ".*", got none'):
            await (await s3.get('a')).read()


@on_loops
async def test_without_an_etag_or_a_size_nothing_goes_on():
    async with bucket() as (s3, store):
        store.answer('GET .*', Cut(response(200, b'12345')[:-1]), unended(b'etag: "a"'))
        for _ in range(2):
            with pytest.raises(HttpConnectionClosedError, match='closed the connection'):
                await (await s3.get('a')).read()
    assert len(store.asked) == 2


@on_loops
async def test_all_that_was_asked_for_has_come():
    """Only the end of a chunked content is missing, which says nothing new."""
    async with bucket() as (s3, store):
        store.answer('GET .*', unended(b'etag: "a"', b'content-range: bytes 0-4/9'))
        assert await (await s3.get('a', stop=5)).read() == b'12345'
    assert len(store.asked) == 1


# ---------------------------------------------------------------------------------- checksums


def crc32(data):
    return base64.b64encode(zlib.crc32(data).to_bytes(4, 'big'))


@on_loops
async def test_the_checksum_of_what_comes_is_checked(slept):
    data = bytes(range(100))
    good, bad = (b'x-amz-checksum-crc32: ' + crc32(each) for each in (data, b'other'))
    async with bucket() as (s3, store):
        store.objects['a'] = data
        store.answer('GET .*', response(200, data, good), response(200, data, bad),
                     begun(data, 30, good), False, begun(data, 30, bad), False)
        for _ in range(2):
            assert await (await s3.get('a')).read() == data
            content = await s3.get('a')
            with pytest.raises(ChecksumError) as raised:
                await content.read()
            assert (raised.value.algorithm, raised.value.expected, raised.value.actual) == (
                'crc32', crc32(b'other'), crc32(data))
            assert (raised.value.phase, raised.value.response_started) == (Phase.CONTENT, True)
    assert len(store.asked) == 6


@on_loops
async def test_a_checksum_of_parts_is_not_that_of_the_object():
    async with bucket() as (s3, store):
        store.answer('GET .*', response(200, b'1', b'x-amz-checksum-crc32: AAAAAA==-2'))
        assert await (await s3.get('a')).read() == b'1'


@pytest.mark.parametrize('name, expected', [
    ('crc32', crc32(b'123')),
    ('sha256', base64.b64encode(hashlib.sha256(b'123').digest()))])
@on_one_loop
async def test_a_checksum_is_sent(name, expected, tmp_path):
    path = tmp_path / 'a'
    path.write_bytes(b'123')
    async with bucket(checksum=name) as (s3, store):
        await s3.put('a', b'123')
        await s3.put('a', path)
    for head in store.heads:
        assert value(head, b'x-amz-checksum-' + name.encode()) == expected


@pytest.mark.parametrize('name, kind', [
    ('crc32', None), ('sha1', None), ('crc64nvme', b'FULL_OBJECT')])
@on_one_loop
async def test_the_checksums_of_parts_are_sent(name, kind):
    def checksum_of(data):
        made = checksum(name)
        made.update(data)
        return made.base64()

    async with bucket() as (s3, store):
        await s3.put('a', LARGE, part_size=PART, checksum=name)
    created, *parts, _ = store.heads
    assert value(created, b'x-amz-checksum-algorithm') == name.upper().encode()
    assert value(created, b'x-amz-checksum-type') == kind
    sums = {value(head, b'x-amz-checksum-' + name.encode()) for head in parts}
    assert sums == {checksum_of(LARGE[start:start + PART])
                    for start in range(0, len(LARGE), PART)}
    element = b'Checksum' + name.upper().encode()
    told = re.findall(b'<%b>(.*?)</%b>' % (element, element), store.bodies[-1])
    assert set(told) == sums


@on_one_loop
async def test_a_checksum_that_there_is_not():
    async with pool() as request:
        with pytest.raises(ValueError, match='md4'):
            Bucket(request, 'bucket', credentials, 'us-east-1', checksum='md4')


# ---------------------------------------------------------------------------------- downloads


@pytest.mark.parametrize('parallel, part_size', [(1, 4), (3, 4), (9, 1), (4, 100), (None, None)])
@on_loops
async def test_an_object_is_downloaded_in_parts(parallel, part_size, tmp_path):
    data = bytes(range(10))
    path = tmp_path / 'a'
    chunks, later, moved = [], [], []

    async def write(chunk):
        await asyncio.sleep(0)
        later.append(chunk)

    async with bucket() as (s3, store):
        store.objects['a'] = data
        options = {'parallel': parallel, 'part_size': part_size, 'on_progress': moved.append}
        info = await s3.download('a', path, **options)
        assert info.size == 10
        assert path.read_bytes() == data
        path.write_bytes(b'before and after')
        with open(path, 'r+b') as opened:
            await s3.download('a', opened, **options)
        assert path.read_bytes() == data + b' after'
        await s3.download('a', chunks.append, **options)
        await s3.download('a', write, **options)
        assert b''.join(chunks) == b''.join(later) == data
        assert sum(moved) == 4 * len(data)
    assert os.listdir(tmp_path) == ['a']
    parts = -(-10 // (part_size or 10))
    assert len(store.asked) == 4 * parts
    assert [value(head, b'if-match') for head in store.heads[:parts]] == [
        None, *(parts - 1) * [etag_of(data).encode()]]


@on_one_loop
async def test_a_disk_that_is_full(tmp_path):
    resource.setrlimit(resource.RLIMIT_FSIZE, (5, resource.RLIM_INFINITY))
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        async with bucket() as (s3, store):
            store.objects['a'] = b'0123456789'
            with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
                await s3.download('a', tmp_path / 'a')
    finally:
        signal.signal(signal.SIGXFSZ, before)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert os.listdir(tmp_path) == []


@on_one_loop
async def test_a_part_is_written_while_it_comes(tmp_path):
    moved = []
    async with bucket() as (s3, store):
        store.objects['a'] = LARGE[:2 * MIB]
        await s3.download('a', tmp_path / 'a', on_progress=moved.append)
    assert (tmp_path / 'a').read_bytes() == LARGE[:2 * MIB]
    assert len(moved) >= 2
    assert sum(moved) == 2 * MIB


@on_loops
async def test_parts_are_passed_on_in_order_whichever_comes_first():
    data = bytes(range(40))
    others = asyncio.Event()
    chunks = []

    async def first(head, body):
        await others.wait()
        return False

    def last(head, body):
        others.set()
        return False

    async with bucket() as (s3, store):
        store.objects['a'] = data
        # The third part comes only when the fourth one has been asked for.
        asked = asyncio.create_task(s3.download('a', chunks.append, part_size=10, parallel=4))

        def delay(head, body):
            return {b'bytes=20-29': first, b'bytes=30-39': last}.get(
                value(head, b'range'), lambda head, body: False)(head, body)

        store.answer('GET .*', *4 * [delay])
        await asked
    assert b''.join(chunks) == data


@on_loops
async def test_an_object_without_content_is_downloaded(tmp_path):
    chunks = []
    async with bucket() as (s3, store):
        store.objects['a'] = b''
        await s3.download('a', chunks.append)
        await s3.download('a', tmp_path / 'a')
    assert (chunks, (tmp_path / 'a').read_bytes()) == ([], b'')
    assert [value(head, b'range') for head in store.heads[:2]] == [b'bytes=0-2097151', None]


@on_loops
async def test_a_server_may_send_the_whole_object_at_once(tmp_path):
    async with bucket() as (s3, store):
        store.answer('GET .*', response(200, b'12345', b'etag: "a"'))
        assert (await s3.download('a', tmp_path / 'a')).size == 5
    assert (tmp_path / 'a').read_bytes() == b'12345'


@pytest.mark.parametrize('answer', [
    response(206, b'', b'content-range: bytes 0-0/0'), response(200, b'123')])
@on_one_loop
async def test_a_server_that_sends_another_part_is_asked_for_the_whole_object(answer):
    chunks = []
    async with bucket() as (s3, store):
        store.objects['a'] = b'123'
        store.answer('GET .*', answer)
        await s3.download('a', chunks.append, part_size=2)
    assert b''.join(chunks) == b'123'
    assert [value(head, b'range') for head in store.heads] == [b'bytes=0-1', None]


@on_one_loop
async def test_a_part_of_an_object_without_a_size_or_an_etag(tmp_path):
    async with bucket() as (s3, store):
        for fields, got in (((b'content-range: bytes 0-1/*', b'etag: "a"'), "'bytes 0-1/.' and "),
                            ((b'content-range: bytes 0-1/9',), "'bytes 0-1/9' and ''")):
            store.answer('GET .*', response(206, b'12', *fields))
            with pytest.raises(S3Error, match=f'must tell the size and the ETag .*, got {got}'):
                await s3.download('a', tmp_path / 'a', part_size=2)
    assert os.listdir(tmp_path) == []


@on_loops
async def test_a_download_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / 'a'
    path.write_bytes(b'before')
    async with bucket() as (s3, store):
        store.objects['a'] = bytes(range(40))
        store.answer('GET .*', False, fault(403, 'AccessDenied'))
        with pytest.raises(S3Error, match='AccessDenied'):
            await s3.download('a', path, part_size=10, parallel=2)
        assert path.read_bytes() == b'before'
        with pytest.raises(S3NotFound, match='NoSuchKey'):
            await s3.download('b', path)
        with pytest.raises(S3PreconditionFailed, match='must have the ETag'):
            store.ignores_conditions = True
            await s3.download('a', path, if_match='"b"')

        def write(chunk):
            raise KeyError(chunk)

        with pytest.raises(KeyError):
            await s3.download('a', write)
    assert os.listdir(tmp_path) == ['a']


@on_loops
async def test_an_object_that_changes_while_it_is_downloaded(tmp_path):
    def change(head, body):
        store.objects['a'] = bytes(40)
        return False

    async with bucket() as (s3, store):
        store.objects['a'] = bytes(range(40))
        store.answer('GET .*', False, change)
        with pytest.raises(S3PreconditionFailed):
            await s3.download('a', tmp_path / 'a', part_size=10)
    assert os.listdir(tmp_path) == []


@on_one_loop
async def test_the_current_folder_may_change_meanwhile(tmp_path, monkeypatch):
    (tmp_path / 'folder').mkdir()
    monkeypatch.chdir(tmp_path)
    async with bucket() as (s3, store):
        store.objects['a'] = b'1'
        await s3.download('a', 'a', on_progress=lambda *_: os.chdir('folder'))
    assert (tmp_path / 'a').read_bytes() == b'1'
    assert sorted(each.name for each in tmp_path.iterdir()) == ['a', 'folder']


@on_one_loop
async def test_where_nothing_can_be_downloaded_to(tmp_path):
    async with bucket() as (s3, store):
        store.objects['a'] = b'1'
        with pytest.raises(TypeError, match='to must be a path, a binary file with a descriptor '
                                            'or a function, got int'):
            await s3.download('a', 1)
        with open(tmp_path / 'a', 'ab') as opened:
            with pytest.raises(ValueError, match='must not be a file that is opened for append'):
                await s3.download('a', opened)
        with pytest.raises(FileNotFoundError):
            await s3.download('a', tmp_path / 'b' / 'c')
        os.mkfifo(tmp_path / 'pipe')
        for path in tmp_path / 'pipe', tmp_path:
            with pytest.raises(ValueError, match=f'the path of a file, and {path} is none$'):
                await s3.download('a', path)
        assert (tmp_path / 'pipe').is_fifo()
        for name in ('parallel', 'part_size'):
            with pytest.raises(ValueError, match=f'{name} must be a whole number, 1 or more'):
                await s3.download('a', tmp_path / 'a', **{name: 0})
    assert store.asked == []


@on_loops
async def test_a_cancellation_that_nobody_asked_for_ends_everything(tmp_path):
    """Code of the caller may wait for a task that is cancelled. A TaskGroup would go on."""
    async def stream():
        yield LARGE
        raise asyncio.CancelledError

    def write(data):
        raise asyncio.CancelledError

    async with bucket(part_size=PART) as (s3, store):
        store.objects['a'] = bytes(40)
        for ask in (lambda: s3.put('b', stream()),
                    lambda: s3.download('a', write, part_size=10),
                    lambda: s3.download('a', tmp_path / 'a', part_size=10, on_progress=write)):
            with pytest.raises(asyncio.CancelledError):
                await ask()
        assert (list(store.objects), store.uploads, os.listdir(tmp_path)) == (['a'], {}, [])


@on_loops
async def test_a_part_that_fails_does_not_cancel_its_caller():
    def write(chunk):
        raise KeyError

    async with bucket() as (s3, store):
        store.objects['a'] = bytes(40)
        for _ in range(2):
            with pytest.raises(KeyError):
                await s3.download('a', write, part_size=10)
        assert cancelling() == 0


@on_loops
async def test_a_download_that_is_cancelled_twice_ends_with_its_tasks(tmp_path):
    async def write(chunk):
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            await let_go.wait()
            ended.append(True)

    begun, let_go, ended = asyncio.Event(), asyncio.Event(), []
    async with bucket() as (s3, store):
        store.objects['a'] = bytes(20)
        task = asyncio.create_task(s3.download('a', write, part_size=10))
        await begun.wait()
        for message in ('first', 'second'):
            task.cancel(message)
            await turns(10)
        assert not task.done()
        let_go.set()
        with pytest.raises(asyncio.CancelledError, match='second'):
            await task
        assert ended == [True]


@on_loops
async def test_a_download_is_cancelled(tmp_path):
    async def never(head, body):
        await asyncio.Event().wait()

    async with bucket() as (s3, store):
        store.objects['a'] = bytes(40)
        store.answer('GET .*', False, never, never)
        task = asyncio.create_task(s3.download('a', tmp_path / 'a', part_size=10, parallel=3))
        await until(lambda: len(store.asked) == 4)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------------------------ writing


async def yielding(*chunks):
    for chunk in chunks:
        yield chunk


class Plain:
    """An async iterable whose iterator can not be closed."""

    def __init__(self, *chunks):
        self.chunks = list(chunks)

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.chunks:
            raise StopAsyncIteration
        return self.chunks.pop(0)


class Chunks(Plain):
    """One that can, and notes it."""

    is_closed = False

    async def aclose(self):
        self.is_closed = True


@pytest.mark.parametrize('data', [b'', b'12', b'1' * 100_000])
@on_loops
async def test_everything_that_can_be_put(data, tmp_path):
    path = tmp_path / 'a'
    path.write_bytes(data)
    kinds = {
        'bytes': data, 'bytearray': bytearray(data), 'view': memoryview(data), 'path': path,
        'streamed': streamed(data), 'generator': yielding(data[:1], b'', data[1:]),
        'function': lambda: yielding(data), 'iterator': Chunks(bytearray(data)),
        'plain': Plain(data[:-1], data[-1:])}
    moved = []
    async with bucket() as (s3, store):
        for kind, each in kinds.items():
            written = await s3.put(kind, each, on_progress=moved.append)
            assert (written.etag, written.parts) == (etag_of(data), 0)
        assert store.objects == dict.fromkeys(kinds, data)
    assert sum(moved) == len(kinds) * len(data)
    assert kinds['iterator'].is_closed
    assert {value(head, b'content-length') for head in store.heads} == {b'%d' % len(data)}


@pytest.mark.parametrize('parallel', [1, 3])
@on_loops
async def test_what_is_large_is_put_in_parts(parallel, tmp_path):
    path = tmp_path / 'a'
    path.write_bytes(LARGE)
    pieces = [LARGE[start:start + 700_000] for start in range(0, len(LARGE), 700_000)]
    kinds = {'bytes': LARGE, 'array': bytearray(LARGE), 'path': path,
             'stream': yielding(*pieces), 'told': Chunks(*pieces)}
    moved = []
    async with bucket() as (s3, store):
        for kind, data in kinds.items():
            written = await s3.put(
                kind, data, part_size=PART, parallel=parallel, on_progress=moved.append,
                size=len(LARGE) if kind == 'told' else None,
                content_type='text/plain', headers=((b'x-amz-request-payer', b'requester'),))
            assert written.parts == 3
            assert re.fullmatch('"[0-9a-f]{32}-3"', written.etag)
            assert store.objects.pop(kind) == LARGE
        assert store.uploads == {}
    assert sum(moved) == len(kinds) * len(LARGE)
    assert len(store.asked) == 5 * len(kinds)
    assert store.asked[0] == 'POST /bucket/bytes?uploads='
    assert {line.partition('=')[0] for line in lines(store, 'PUT')} == {
        f'PUT /bucket/{kind}?partNumber' for kind in kinds}
    # What describes the object is told once, and what each request needs with each.
    types = [value(head, b'content-type') for head in store.heads[:5]]
    assert types == [b'text/plain', None, None, None, b'application/xml']
    assert {value(head, b'x-amz-request-payer') for head in store.heads} == {b'requester'}


@pytest.mark.parametrize('options, of_bytes, of_a_stream', [({}, 4, 2), ({'parallel': 7}, 7, 7)])
@on_one_loop
async def test_how_many_parts_are_sent_at_once(options, of_bytes, of_a_stream):
    async def sink(method, url, *, params=(), **kwargs):
        nonlocal count
        if method == b'PUT':
            count += 1
            most.append(count)
            await turns(100)
            count -= 1
        return b'200', ((b'etag', b'"a"'),), streamed(
            xml('Result', '<UploadId>1</UploadId><ETag>"a-8"</ETag>'))()

    s3 = Bucket(sink, 'bucket', credentials, 'us-east-1', endpoint='https://a.example', **options)
    for data, expected in ((bytes(12 * PART), of_bytes),
                           (yielding(*[bytes(PART)] * 12), of_a_stream)):
        count, most = 0, []
        await s3.put('a', data, part_size=PART)
        assert max(most) == expected


@on_loops
async def test_several_parts_are_sent_at_once():
    arrived = 0

    async def together(head, body):
        nonlocal arrived
        arrived += 1
        while arrived < 3:
            await asyncio.sleep(0)
        return False

    async with bucket(parallel=3) as (s3, store):
        store.answer('PUT .*', together, together, together)
        await s3.put('a', LARGE, part_size=PART)
        assert store.objects['a'] == LARGE


@on_one_loop
async def test_a_stream_holds_two_parts_at_most():
    """One that is sent, and one that is filled meanwhile."""
    async def stream():
        for _ in range(40):
            yield bytes(MIB)

    async def sink(method, url, *, params=(), body=(), **kwargs):
        if method == b'PUT':
            async for _ in body():
                await asyncio.sleep(0)
        return b'200', ((b'etag', b'"a"'),), streamed(
            xml('Result', '<UploadId>1</UploadId><ETag>"a-8"</ETag>'))()

    tracemalloc.start()
    try:
        s3 = Bucket(sink, 'bucket', credentials, 'us-east-1', endpoint='http://a.example')
        assert (await s3.put('a', stream())).parts == 8
        assert tracemalloc.get_traced_memory()[1] < 14 * MIB
    finally:
        tracemalloc.stop()


@on_one_loop
async def test_a_stream_may_have_chunks_of_any_length():
    chunks = [LARGE[:1], LARGE[1:3], LARGE[3:2 * PART], LARGE[2 * PART:2 * PART + 5000],
              *(LARGE[at:at + 1] for at in range(2 * PART + 5000, len(LARGE)))]
    assert b''.join(chunks) == LARGE
    async with bucket() as (s3, store):
        await s3.put('a', yielding(*chunks))
        assert store.objects['a'] == LARGE
        # Of single bytes, an object for each would take 40 times as much.
        tracemalloc.start()
        try:
            await s3.put('b', yielding(*(LARGE[at:at + 1] for at in range(50_000))))
            assert tracemalloc.get_traced_memory()[1] < 1.5 * MIB
        finally:
            tracemalloc.stop()
        assert store.objects['b'] == LARGE[:50_000]


@on_one_loop
async def test_a_stream_may_use_its_buffer_again():
    async def stream():
        buffer = bytearray(MIB)
        for number in range(12):
            buffer[:] = bytes([number]) * MIB
            yield buffer

    async with bucket() as (s3, store):
        await s3.put('a', stream())
        assert store.objects['a'] == b''.join(bytes([number]) * MIB for number in range(12))


@on_one_loop
async def test_the_parts_of_a_long_stream_grow(monkeypatch):
    monkeypatch.setattr(lowhaio_s3, 'PARTS_OF_ONE_SIZE', 2)
    async with bucket() as (s3, store):
        await s3.put('a', yielding(*[bytes(MIB)] * 31), parallel=1)
    assert [len(body) // MIB for body in store.bodies[1:-1]] == [5, 5, 10, 10, 1]


@on_one_loop
async def test_parts_are_as_large_as_their_number_needs(monkeypatch):
    monkeypatch.setattr(lowhaio_s3, 'MAX_PARTS', 3)
    async with bucket() as (s3, store):
        await s3.put('a', LARGE + LARGE, part_size=PART)
        sizes = sorted(len(body) // MIB for body in store.bodies[1:-1])
        assert sizes == [6, 7, 7]
        with pytest.raises(ValueError, match='data must have at most 3 parts: give its'):
            await s3.put('a', yielding(*[bytes(MIB)] * 16))
        assert store.uploads == {}


@pytest.mark.parametrize('size, data, message', [
    (3, b'12', 'size must be the number of bytes of data, 2, got 3'),
    (3, [b'1', b'2'], 'size must be the number of bytes of data, 3, but 2 came'),
    (3, [], 'size must be the number of bytes of data, 3, but 0 came'),
    (1, [b'12', b'3'], 'size must be the number of bytes of data, 1, but 3 came'),
    (-1, b'', 'size must be a whole number, 0 or more, got -1'),
    (True, b'1', 'size must be a whole number, 0 or more, got True')])
@on_one_loop
async def test_a_size_that_is_not_that_of_the_data(size, data, message, tmp_path):
    path = tmp_path / 'a'
    path.write_bytes(b''.join(data) if isinstance(data, list) else data)
    async with bucket() as (s3, _):
        # It is closed again.
        with pytest.raises(ValueError, match='size must be'):
            await s3.put('a', path, size=size)
        with pytest.raises(ValueError, match='key must be a str that is not empty'):
            await s3.put('', path)
    async with bucket() as (s3, store):
        with pytest.raises(ValueError, match='size must be') as raised:
            await s3.put('a', Chunks(*data) if isinstance(data, list) else data, size=size)
        assert str(raised.value) == message
    assert store.asked == []


@pytest.mark.parametrize('size', [11 * MIB, 13 * MIB])
@on_loops
async def test_a_size_that_turns_out_to_be_wrong_aborts(size):
    chunks = Chunks(*12 * [bytes(MIB)])
    async with bucket() as (s3, store):
        with pytest.raises(ValueError, match=f'must be the number of bytes of data, {size}, '):
            await s3.put('a', chunks, size=size)
        assert (store.objects, store.uploads) == ({}, {})
    assert chunks.is_closed


@pytest.mark.parametrize('data', [1, 'text', None])
@on_one_loop
async def test_what_can_not_be_put(data, tmp_path):
    async with bucket() as (s3, store):
        with pytest.raises(TypeError, match='data must be bytes, a Path, an async iterable of '
                                            f'bytes or .*, got {type(data).__name__}'):
            await s3.put('a', data)
        with pytest.raises(FileNotFoundError):
            await s3.put('a', tmp_path / 'none')
        os.mkfifo(tmp_path / 'pipe')
        for path in (tmp_path / 'pipe', tmp_path):
            with pytest.raises(ValueError, match='must be the Path of a regular file, .*, got '
                                                 f"'{path}'"):
                await s3.put('a', path)
        for wrong in (b'', LARGE):
            with pytest.raises(ValueError, match='checksum must be one of .*, got .md4.'):
                await s3.put('a', wrong, checksum='md4')
        with pytest.raises(ValueError, match='part_size must be a whole number, 5242880 or'):
            await s3.put('a', b'', part_size=MIB)
        with pytest.raises(ValueError, match='parallel must be a whole number, 1 or more, got'):
            await s3.put('a', b'', parallel=1.5)
        with pytest.raises(ValueError, match='metadata must be ASCII: quote what is not'):
            await s3.put('a', b'', metadata=(('a', 'ß'),))
        with pytest.raises(ValueError, match='content_type must not be given beside a content-'):
            await s3.put('a', b'', content_type='a/b', headers=((b'Content-Type', b'a/b'),))
        for key in ('', b'a', None):
            with pytest.raises(ValueError, match='key must be a str that is not empty, got'):
                await s3.put(key, b'')
    assert store.asked == []


@on_loops
async def test_a_file_that_becomes_shorter_is_not_put(tmp_path):
    path = tmp_path / 'a'
    path.write_bytes(LARGE)

    def truncate(head, body):
        path.write_bytes(b'short')
        return False

    async with bucket(parallel=1) as (s3, store):
        store.answer('POST .*', truncate)
        with pytest.raises(ValueError, match='the file must not change while it is sent, but it '
                                             'ended at byte 5 instead of'):
            await s3.put('a', path, part_size=PART)
        assert (store.objects, store.uploads) == ({}, {})


@on_loops
async def test_a_write_with_a_condition():
    async with bucket() as (s3, store):
        await s3.put('a', b'1', if_none_match='*')
        with pytest.raises(S3PreconditionFailed, match='There is one'):
            await s3.put('a', b'2', if_none_match='*')
        await s3.put('a', LARGE, part_size=PART, if_match=etag_of(b'1'))
        assert store.objects['a'] == LARGE
        await s3.copy('a', 'b', if_none_match='*')
        await s3.delete('b', if_match='"b"')
    assert [value(head, b'if-none-match') for head in store.heads[:2]] == [b'*', b'*']
    # It is about the object, which only the last request makes.
    assert [value(head, b'if-match') for head in store.heads[2:7]] == [
        *4 * [None], etag_of(b'1').encode()]
    assert value(store.heads[7], b'if-none-match') == b'*'
    assert value(store.heads[8], b'if-match') == b'"b"'


@on_loops
async def test_a_write_with_a_condition_is_not_made_again_if_it_may_have_been_made():
    async with bucket() as (s3, store):
        for ask in (lambda: s3.put('a', b'1', if_none_match='*'),
                    lambda: s3.copy('a', 'b', if_match='"c"'),
                    lambda: s3.delete('a', if_match='"c"')):
            store.answer('.*', None)
            with pytest.raises(HttpDataError):
                await ask()
        assert len(store.asked) == 3
        # The condition may also be among the headers.
        store.answer('PUT .*', None)
        with pytest.raises(HttpDataError):
            await s3.put('a', b'1', headers=((b'If-None-Match', b'*'),))
        # Nobody knows what has become of these.
        for answer in (response(500), response(502), response(504), response(200, xml(
                'Error', '<Code>InternalError</Code>'))):
            store.answer('PUT .*', answer)
            with pytest.raises(S3Busy):
                await s3.copy('a', 'b', headers=((b'if-none-match', b'*'),))
        assert len(store.asked) == 8
        # S3 says itself that it has done nothing.
        store.answer('PUT .*', fault(503, 'SlowDown'))
        await s3.put('a', b'1', if_none_match='*')
        # Other writes have the same effect if they are made twice.
        store.answer('PUT .*', None)
        await s3.put('a', b'2')
    assert store.objects == {'a': b'2'}


@on_loops
async def test_what_is_sent_again_is_counted_once():
    moved = []
    async with bucket() as (s3, store):
        store.answer('PUT .*', fault(500, 'InternalError'), None)
        await s3.put('a', b'123', on_progress=moved.append)
    assert moved == [3, -3, 3, -3, 3]


@on_loops
async def test_what_fails_in_the_caller_is_not_sent_again(slept):
    def fail(count):
        counts.append(count)
        raise error

    counts, error = [], KeyError('mine')
    async with bucket() as (s3, _):
        with pytest.raises(HttpDataError, match='the request body: KeyError: .mine.') as raised:
            await s3.put('a', b'123', on_progress=fail)
        assert raised.value.__cause__ is error
    assert (counts, slept) == ([3], [])


@on_loops
async def test_with_tls_the_content_is_not_signed(tmp_path):
    path = tmp_path / 'a'
    path.write_bytes(b'123')
    async with bucket(certified('127.0.0.1'), {'get_ssl_context': trusting}) as (s3, store):
        await s3.put('a', b'123')
        await s3.put('a', path)
        s3 = Bucket(store.request, 'bucket', credentials, 'us-east-1', endpoint=store.origin,
                    signed_payload=True)
        await s3.put('a', b'123')
    assert [value(head, b'x-amz-content-sha256') for head in store.heads] == [
        b'UNSIGNED-PAYLOAD', b'UNSIGNED-PAYLOAD', hashlib.sha256(b'123').hexdigest().encode()]


@on_loops
async def test_other_tasks_get_turns_while_content_is_hashed():
    async def count():
        nonlocal counted
        while True:
            await asyncio.sleep(0)
            counted += 1

    async def sink(method, url, **kwargs):
        seen.append(counted)
        return b'200', (), streamed(b'')()

    counted, seen = 0, []
    task = asyncio.create_task(count())
    s3 = Bucket(sink, 'bucket', credentials, 'us-east-1', endpoint='http://a.example')
    await s3.put('a', bytes(16 * MIB))
    task.cancel()
    assert 10 < seen[0] < 100


# ----------------------------------------------------------- multipart uploads that go wrong


@on_loops
async def test_an_upload_that_fails_is_aborted():
    async with bucket() as (s3, store):
        store.answer('PUT .*partNumber=2.*', fault(403, 'AccessDenied'))
        with pytest.raises(S3Error, match='403 AccessDenied'):
            await s3.put('a', LARGE, part_size=PART)
        assert (store.objects, store.uploads) == ({}, {})
        store.answer('POST .*uploadId.*', response(200, b'\n' + xml(
            'Error', '<Code>EntityTooSmall</Code><Message>A part is.</Message>')))
        with pytest.raises(S3Error, match='S3 answered 200 EntityTooSmall: A part is.'):
            await s3.put('a', LARGE, part_size=PART)
        assert (store.objects, store.uploads) == ({}, {})
    assert lines(store, 'DELETE') == ['DELETE /bucket/a?uploadId=upload%200'] * 2


@on_loops
async def test_an_upload_whose_stream_fails_is_aborted():
    async def failing():
        yield LARGE
        raise error

    error = KeyError('mine')
    async with bucket() as (s3, store):
        with pytest.raises(KeyError) as raised:
            await s3.put('a', failing())
        assert raised.value is error
        assert (store.objects, store.uploads) == ({}, {})


@on_loops
async def test_an_upload_that_is_cancelled_is_aborted():
    async def never(head, body):
        await asyncio.Event().wait()

    async with bucket() as (s3, store):
        store.answer('PUT .*', False, never)
        task = asyncio.create_task(s3.put('a', LARGE, part_size=PART))
        await until(lambda: len(lines(store, 'PUT')) == 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (store.objects, store.uploads) == ({}, {})


@pytest.mark.parametrize('is_answered', [True, False])
@on_loops
async def test_an_upload_that_is_cancelled_while_it_begins_is_aborted(is_answered, monkeypatch):
    async def late(head, body):
        await answered.wait()
        return False

    answered = asyncio.Event()
    async with bucket() as (s3, store):
        store.answer('POST .*', late)
        task = asyncio.create_task(s3.put('a', LARGE, part_size=PART))
        await until(lambda: store.asked)
        if is_answered:
            asyncio.get_running_loop().call_soon(answered.set)
        else:
            monkeypatch.setattr(lowhaio_s3, 'ABORT_TIMEOUT', 0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as raised:
            await task
        assert (store.objects, store.uploads) == ({}, {})
    assert len(lines(store, 'DELETE')) == is_answered
    notes = getattr(raised.value, '__notes__', [])
    assert [each.partition(': ')[0] for each in notes] == (not is_answered) * [
        'The multipart upload that was to begin was not aborted']


class Data(bytearray):
    """One whose end can be seen."""


@pytest.mark.parametrize('data', [b'1', LARGE])
@on_loops
async def test_what_could_not_be_put_is_not_held(data):
    """The error refers to the frames that it came through."""
    data = Data(data)
    held = weakref.ref(data)
    gc.disable()
    try:
        async with bucket() as (s3, store):
            store.answer('PUT .*', *3 * [fault(403)])
            with contextlib.suppress(S3Error):
                await s3.put('a', data, part_size=PART)
            del data
            assert held() is None
    finally:
        gc.enable()


@pytest.mark.parametrize('answer, note', [
    (fault(403, 'AccessDenied'), True), (fault(404, 'NoSuchUpload'), False)])
@on_loops
async def test_an_upload_that_can_not_be_aborted(answer, note):
    async with bucket() as (s3, store):
        store.answer('PUT .*', *3 * [fault(400, 'InvalidPart')])
        store.answer('DELETE .*', answer)
        with pytest.raises(S3Error, match='InvalidPart') as raised:
            await s3.put('a', LARGE, part_size=PART)
    notes = getattr(raised.value, '__notes__', [])
    assert [each.partition(': ')[0] for each in notes] == note * [
        'The multipart upload upload 0 was not aborted']


@on_loops
async def test_an_upload_may_have_been_completed_although_no_answer_came():
    def complete(head, body):
        store.post('a', {'uploadId': 'upload 0'}, head, body)
        store.fields['a'] = (b'etag: ' + etag.encode(),)

    digests = b''.join(hashlib.md5(LARGE[start:start + PART]).digest()
                       for start in range(0, len(LARGE), PART))
    etag = f'"{hashlib.md5(digests).hexdigest()}-3"'
    key = b'x-amz-server-side-encryption-customer-key'
    for found, is_written in ((etag, True), ('"other"', False), (None, False)):
        async with bucket() as (s3, store):
            store.answer('POST .*uploadId.*', complete, fault(404, 'NoSuchUpload'))
            # Of what is encrypted with a key, nothing is told without it.
            store.answer('HEAD .*', response(404) if found is None else head_of(
                b'etag: ' + found.encode(), b'content-length: 9'))
            if is_written:
                assert (await s3.put('a', LARGE, part_size=PART,
                                     headers=((key, b'1'),))).etag == etag
                assert {value(head, key) for head in store.heads} == {b'1'}
            else:
                with pytest.raises(S3NotFound, match='NoSuchUpload'):
                    await s3.put('a', LARGE, part_size=PART)
            assert store.objects['a'] == LARGE


@on_one_loop
async def test_servers_tell_etags_in_many_ways():
    digests = b''.join(hashlib.md5(LARGE[start:start + PART]).digest()
                       for start in range(0, len(LARGE), PART))
    etag = hashlib.md5(digests).hexdigest() + '-3'
    async with bucket() as (s3, store):
        store.objects['a'] = b'1'
        plain = etag_of(b'1').strip('"')
        store.answer('PUT .*', response(200, xml('CopyObjectResult', f'<ETag>{plain}</ETag>')))
        assert (await s3.copy('a', 'b')).etag == etag_of(b'1')
        for told, expected in ((etag, f'"{etag}"'), ('', f'"{etag}"'), ('"x"', '"x"')):
            store.answer('POST .*uploadId.*', response(200, xml('Result', f'<ETag>{told}</ETag>')))
            assert (await s3.put('a', LARGE, part_size=PART)).etag == expected
        store.answer('PUT .*', *3 * [response(200, b'', b'etag: "encrypted"')])
        store.answer('POST .*uploadId.*', response(200, xml('Result', '')))
        assert (await s3.put('a', LARGE, part_size=PART)).etag == ''


@on_loops
async def test_etags_of_parts_that_are_no_md5_tell_nothing():
    async with bucket() as (s3, store):
        store.answer('PUT .*', *3 * [response(200, b'', b'etag: "encrypted"')])
        store.answer('POST .*uploadId.*', fault(404, 'NoSuchUpload'))
        store.answer('HEAD .*', head_of(b'etag: "encrypted-3"', b'content-length: 9'))
        with pytest.raises(S3NotFound, match='NoSuchUpload'):
            await s3.put('a', LARGE, part_size=PART)


@on_one_loop
async def test_a_part_without_an_etag(monkeypatch):
    monkeypatch.setattr(lowhaio_s3, 'MAX_COPY', 1)
    message = 'must tell the ETag of each part of a multipart upload, got none of part 1'
    async with bucket(parallel=1) as (s3, store):
        store.answer('PUT .*', response(200))
        with pytest.raises(S3Error, match=message):
            await s3.put('a', LARGE, part_size=PART)
        # rclone makes an empty part of one that is to be copied.
        store.objects['b'] = b'12'
        store.answer('PUT .*', fault(400, 'EntityTooLarge'),
                     response(200, xml('CopyPartResult', '')))
        with pytest.raises(S3Error, match=message):
            await s3.copy('b', 'a')
        assert store.uploads == {}


@on_one_loop
async def test_a_page_of_a_proxy_is_no_result_of_an_upload_or_a_copy():
    async with bucket() as (s3, store):
        for pattern, ask in (('POST .*uploadId.*', lambda: s3.put('a', LARGE, part_size=PART)),
                             ('PUT .*', lambda: s3.copy('a', 'b'))):
            store.answer(pattern, response(200, b'<html><body/></html>'))
            with pytest.raises(S3Error, match="must answer with a result in XML, got b'<html>"):
                await ask()
        assert store.uploads == {}


@on_one_loop
async def test_what_makes_the_server_copy_content_may_take_long(monkeypatch):
    monkeypatch.setattr(lowhaio_s3, 'MAX_COPY', 5)
    async with bucket() as (s3, store):
        async def noting(method, url, **kwargs):
            code, headers, body = await store.request(method, url, **kwargs)
            asked.append((len(store.asked), kwargs.get('timeouts')))
            return code, headers, body

        asked = []
        store.objects['a'] = b'0123456789'
        noted = Bucket(noting, 'bucket', credentials, 'us-east-1', endpoint=store.origin)
        await noted.put('b', LARGE, part_size=PART, parallel=1)
        store.answer('PUT .*', fault(400, 'EntityTooLarge'))
        await noted.copy('a', 'c')
        told = dict(asked)
    long = {store.asked[number - 1].replace('upload%20', '') for number, each in told.items()
            if each == {'read': 300}}
    assert long == {'POST /bucket/b?uploadId=0', 'PUT /bucket/c', 'POST /bucket/c?uploadId=0',
                    'PUT /bucket/c?partNumber=1&uploadId=0'}


@on_one_loop
async def test_an_upload_without_an_id():
    async with bucket() as (s3, store):
        store.answer('POST .*', response(200, xml('Result', '')))
        with pytest.raises(S3Error, match='has begun a multipart upload without an id'):
            await s3.put('a', LARGE, part_size=PART)


# ----------------------------------------------------------------------------------- listing


def keys_of(pages):
    return [[each.key for each in page.objects] for page in pages]


@on_loops
async def test_a_listing_has_pages():
    async with bucket() as (s3, store):
        store.objects = {f'a/{name}': b'1' for name in 'ab&<+ é#%'} | {'b': b'22', 'c/d': b''}
        pages = s3.list('a/', page_size=4)
        assert repr(pages) == '<Pages go on>'
        found = [page async for page in pages]
        assert repr(pages) == '<Pages have ended>'
        assert [page async for page in pages] == []
        assert keys_of(found) == [['a/ ', 'a/#', 'a/%', 'a/&'], ['a/+', 'a/<', 'a/a', 'a/b'],
                                  ['a/é']]
        asked = len(store.asked)
        assert [page async for page in s3.list(delimiter='/')] == [
            Page((ListedObject('b', 2, etag_of(b'22'), '2026-11-29T10:00:00.000Z', 'STANDARD'),),
                 ('a/', 'c/'))]
        assert keys_of([page async for page in s3.list(start_after='a/é')]) == [['b', 'c/d']]
        assert found[0].objects[0].modified == datetime(2026, 11, 29, 10, tzinfo=UTC)
    assert asked == 3
    assert store.asked[0] == ('GET /bucket?encoding-type=url&list-type=2&max-keys=4&prefix=a%2F')
    assert store.asked[1] == ('GET /bucket?continuation-token=a%2F%26&encoding-type=url&'
                              'list-type=2&max-keys=4&prefix=a%2F')


@on_one_loop
async def test_a_server_that_does_not_encode_keys_and_quotes_no_etag():
    etag = 'd41d8cd98f00b204e9800998ecf8427e'
    async with bucket() as (s3, store):
        store.answer('GET .*', response(200, xml(
            'ListBucketResult', '<Prefix>?</Prefix><Name>?</Name>\n'
            f'<Contents>\n <Key>a+%20</Key>\n <ETag>{etag}</ETag></Contents><Contents><Owner>'
            '<ID>?</ID></Owner><Key>b</Key></Contents><CommonPrefixes>\n <Prefix>%</Prefix>\n'
            '</CommonPrefixes>')))
        assert [page async for page in s3.list()] == [Page(
            (ListedObject('a+%20', 0, f'"{etag}"', '', ''), ListedObject('b', 0, '', '', '')),
            ('%',))]


@on_one_loop
async def test_what_is_no_listing(slept):
    async with bucket() as (s3, store):
        store.answer('GET .*', response(200, b'<html>Hello'))
        with pytest.raises(S3Error, match="must answer with XML, got b'<html>Hello'") as raised:
            await anext(s3.list())
        assert isinstance(raised.value.__cause__, expat.ExpatError)
        store.answer('GET .*', response(200, b'<html><body/></html>'))
        with pytest.raises(S3Error, match="must answer with a ListBucketResult, got b'<html>"):
            await anext(s3.list())
        for encoding, kind in (('unknown', LookupError), ('shift_jis', ValueError)):
            answer = f'<?xml version="1.0" encoding="{encoding}"?><a/>'.encode()
            store.answer('GET .*', response(200, answer), response(403, answer))
            with pytest.raises(S3Error, match='must answer with XML, got') as raised:
                await anext(s3.list())
            assert type(raised.value.__cause__) is kind
            with pytest.raises(S3Error, match='403 Forbidden'):
                await s3.get('a')
        store.answer('GET .*', response(200, xml(
            'ListBucketResult', '<IsTruncated>true</IsTruncated><NextMarker>a</NextMarker>')))
        with pytest.raises(S3Error, match='tell how its listing goes on, but it sent no token'):
            await anext(s3.list())
        for entry in ('<Size>1</Size>', '<Key>a</Key><Size>-1</Size>'):
            store.answer('GET .*', response(200, xml(
                'ListBucketResult', f'<Contents>{entry}</Contents>')))
            with pytest.raises(S3Error, match='must list objects with a key and a size, got {'):
                await anext(s3.list())
        with pytest.raises(ValueError, match='page_size must be a whole number, 1 or more, got 0'):
            s3.list(page_size=0)


@on_one_loop
async def test_a_listing_that_does_not_go_on():
    page = response(200, xml(
        'ListBucketResult', '<NextContinuationToken>a</NextContinuationToken>'))
    async with bucket() as (s3, store):
        store.answer('GET .*', page, page)
        with pytest.raises(S3Error, match='must go on in its listing, but it sent the same token'):
            async for _ in s3.list():
                pass
    assert len(store.asked) == 2


@on_loops
async def test_a_page_that_breaks_off_is_asked_for_again(slept):
    async with bucket() as (s3, store):
        store.objects = {'a': b'1'}
        store.answer('GET .*', Cut(response(200, xml('ListBucketResult', ''))[:-9]))
        assert keys_of([page async for page in s3.list()]) == [['a']]
    assert len(slept) == 1


@on_one_loop
async def test_what_is_held_of_an_answer_has_a_bound(monkeypatch):
    monkeypatch.setattr(lowhaio_s3, 'MAX_XML', 10)
    monkeypatch.setattr(lowhaio_s3, 'MAX_ERROR', 10)
    async with bucket() as (s3, store):
        store.answer('GET .*', response(200, b' ' * MIB), response(403, b'x' * MIB))
        with pytest.raises(S3Error, match='must answer with XML'):
            await anext(s3.list())
        with pytest.raises(S3Error, match='S3 answered 403 Forbidden .GET'):
            await s3.get('a')


# ------------------------------------------------------------------------- copying, deleting


@on_loops
async def test_an_object_is_copied():
    async with bucket() as (s3, store):
        store.objects['a ?#%é'] = b'1'
        written = await s3.copy('a ?#%é', 'b', headers=((b'x-amz-metadata-directive', b'COPY'),))
        assert (written.key, written.etag, written.parts) == ('b', etag_of(b'1'), 0)
        store.answer('PUT .*', response(200, b'Hello'))
        with pytest.raises(S3Error, match="the server must answer with XML, got b'Hello'"):
            await s3.copy('b', 'd')
        other = Bucket(store.request, 'other', credentials, 'us-east-1', endpoint=store.origin)
        bare = etag_of(b'1')[1:-1]
        store.answer('PUT /other.*', response(200, xml(
            'CopyObjectResult', f'<ETag>{bare}</ETag>')))
        # `if_match` takes it with its quotation marks.
        assert (await other.copy('a', 'c', source=s3, version='v&1')).etag == etag_of(b'1')
        with pytest.raises(ValueError, match='key must be a str that is not empty'):
            await s3.copy('', 'b')
    assert store.objects == {'a ?#%é': b'1', 'b': b'1'}
    assert value(store.heads[0], b'x-amz-copy-source') == b'/bucket/a%20%3F%23%25%C3%A9'
    assert value(store.heads[0], b'x-amz-metadata-directive') == b'COPY'
    assert value(store.heads[2], b'x-amz-copy-source') == b'/bucket/a?versionId=v%261'


@on_loops
async def test_a_copy_that_fails_after_it_has_been_answered(slept):
    failed = xml('Error', '<Code>InternalError</Code><Message>Again.</Message>')
    async with bucket() as (s3, store):
        store.objects['a'] = b'1'
        store.answer('PUT .*', response(200, failed))
        await s3.copy('a', 'b')
        assert store.objects['b'] == b'1'
        store.answer('PUT .*', *6 * [response(200, failed)])
        with pytest.raises(S3Busy, match='S3 answered 200 InternalError: Again'):
            await s3.copy('a', 'c')


@on_loops
async def test_a_large_object_is_copied_in_parts(monkeypatch):
    monkeypatch.setattr(lowhaio_s3, 'MAX_COPY', 5)
    monkeypatch.setattr(lowhaio_s3, 'COPY_PART_SIZE', 4)
    too_large = fault(400, 'InvalidRequest', 'The copy source is larger than allowed.')
    async with bucket() as (s3, store):
        store.objects['a'] = bytes(range(10))
        store.fields['a'] = (b'content-type: text/plain', b'x-amz-meta-a: 1', b'x-other: 1')
        store.answer('PUT .*', too_large)
        written = await s3.copy('a', 'b', version='v')
        assert written.parts == 3
        assert store.objects['b'] == bytes(range(10))
        created = store.heads[2]
        # It may be something else that is not valid.
        store.objects['a'] = b'12345'
        store.answer('PUT .*', too_large)
        with pytest.raises(S3Error, match='InvalidRequest'):
            await s3.copy('a', 'b')
        store.answer('PUT .*', fault(403, 'AccessDenied'))
        with pytest.raises(S3Error, match='AccessDenied'):
            await s3.copy('a', 'b')
        # What is told in its place is not told twice.
        store.objects['a'] = bytes(10)
        store.answer('PUT .*', too_large)
        await s3.copy('a', 'b', headers=((b'X-Amz-Metadata-Directive', b'REPLACE'),
                                         (b'content-type', b'text/csv')))
        replaced = next(head for head in reversed(store.heads) if b'?uploads=' in head)
    assert values_of(replaced, b'content-type') == [b'text/csv']
    assert value(replaced, b'x-amz-meta-a') is None
    assert store.asked[:3] == ['PUT /bucket/b', 'HEAD /bucket/a?versionId=v',
                               'POST /bucket/b?uploads=']
    assert value(created, b'content-type') == b'text/plain'
    assert value(created, b'x-amz-meta-a') == b'1'
    assert value(created, b'x-other') is None
    parts = [head for head in store.heads if b'partNumber' in head][:3]
    assert {value(head, b'x-amz-copy-source-range') for head in parts} == {
        b'bytes=0-3', b'bytes=4-7', b'bytes=8-9'}
    assert {value(head, b'x-amz-copy-source') for head in parts} == {b'/bucket/a?versionId=v'}
    assert {value(head, b'x-amz-copy-source-if-match') for head in parts} == {
        etag_of(bytes(range(10))).encode()}


@on_loops
async def test_many_objects_are_deleted():
    async def asynchronous(names):
        for name in names:
            yield name

    async with bucket() as (s3, store):
        for make in (iter, asynchronous):
            names = [f'{number} <&"\r\n>' for number in range(2500)]
            store.objects = dict.fromkeys([*names, 'a'], b'')
            assert await s3.delete_many(make(names)) == 2500
            assert list(store.objects) == ['a']
            assert await s3.delete_many(make(names[:1000])) == 1000
        assert await s3.delete_many([]) == await s3.delete_many(asynchronous([])) == 0
        with pytest.raises(TypeError, match='keys must be several str, got one'):
            await s3.delete_many('abc')
        with pytest.raises(ValueError, match='key must be a str that is not empty'):
            await s3.delete_many([''])
        with pytest.raises(ValueError, match="that is not empty, got b'a'"):
            await s3.delete_many([b'a'])
        store.answer('POST .*', response(200, b'<html><body/></html>'))
        with pytest.raises(S3Error, match="must answer with a result in XML, got b'<html>"):
            await s3.delete_many(['a'])
        assert await s3.delete_many(['\x00']) == 1
    assert store.asked == ['POST /bucket?delete='] * 9 + ['DELETE /bucket/%00']


@on_loops
async def test_some_of_many_are_not_deleted():
    told = ('<Error><Key>b</Key><Code>AccessDenied</Code><Message>No.</Message></Error>'
            '<Error><Key>c</Key><Code>InternalError</Code></Error>')
    async with bucket() as (s3, store):
        store.answer('POST .*', response(200, xml('DeleteResult', told),
                                         b'x-amz-request-id: 7'))
        store.answer('DELETE .*', False, fault(403, 'AccessDenied', 'No.'))
        with pytest.raises(S3DeleteError) as raised:
            await s3.delete_many(['a', 'b', 'c', 'in\x00valid', 'in\x01valid'])
    error = raised.value
    assert str(error) == ('3 of 5 objects in bucket were not deleted. The first: S3 answered 403 '
                          'AccessDenied: No. (DELETE in bucket, request id id-in-body)')
    assert [(key, each.code, each.message) for key, each in error.failed] == [
        ('in\x01valid', 'AccessDenied', 'No.'), ('b', 'AccessDenied', 'No.'),
        ('c', 'InternalError', '')]
    assert error.__cause__ is error.failed[0][1]
    assert (error.key, error.code, error.failed[1][1].request_id) == (
        'in\x01valid', 'AccessDenied', '7')
    # XML has no form for these two.
    assert lines(store, 'DELETE') == ['DELETE /bucket/in%00valid', 'DELETE /bucket/in%01valid']


# ------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize('answer, kind, code, message, tries', [
    (fault(403, 'AccessDenied', 'No &amp; no.'), S3Error, 'AccessDenied', 'No & no.', 1),
    (fault(404, 'NoSuchBucket', ''), S3NotFound, 'NoSuchBucket', '', 1),
    (fault(409, 'OperationAborted', ''), S3Busy, 'OperationAborted', '', 6),
    (fault(400, 'RequestTimeout', ''), S3Busy, 'RequestTimeout', '', 6),
    (fault(503, 'SlowDown', 'Less.'), S3Busy, 'SlowDown', 'Less.', 6),
    (response(502, b'<html>Bad'), S3Busy, 'Bad Gateway', '', 6),
    (response(429), S3Busy, 'Too Many Requests', '', 6),
    (response(499, b'?'), S3Error, '', '', 1)])
@on_one_loop
async def test_what_s3_says_is_wrong(slept, answer, kind, code, message, tries):
    async with bucket() as (s3, store):
        for method, ask in ((b'GET', s3.get), (b'PUT', lambda key: s3.put(key, b''))):
            slept.clear()
            store.answer('.*', *tries * [answer])
            with pytest.raises(S3Error) as raised:
                await ask('my key')
            error = raised.value
            assert type(error) is kind
            status = answer[9:12]
            assert (error.status, error.code, error.message, error.bucket, error.key) == (
                status, code, message, 'bucket', 'my key')
            text = ' '.join(filter(None, (status.decode(), code)))
            assert str(error).startswith(f'S3 answered {text}{": " * bool(message)}{message} ')
            assert f'({method.decode()} in bucket, request id ' in str(error)
            assert len(slept) == tries - 1


@on_one_loop
async def test_what_an_error_has_for_support():
    async with bucket() as (s3, store):
        store.answer('GET .*', fault(403, 'AccessDenied', '', b'x-amz-request-id: in-head',
                                     b'x-amz-id-2: host-in-head'), fault(403, 'AccessDenied'))
        for request_id, host_id in (('in-head', 'host-in-head'), ('id-in-body', 'host')):
            with pytest.raises(S3Error, match=f'request id {request_id}') as raised:
                await s3.get('a')
            assert (raised.value.request_id, raised.value.host_id) == (request_id, host_id)
            assert ((b'x-amz-id-2', b'host-in-head') in raised.value.headers) is (
                host_id == 'host-in-head')


@on_one_loop
async def test_a_bucket_that_is_in_another_region():
    async with bucket() as (s3, store):
        store.answer('GET .*', fault(301, 'PermanentRedirect', 'Elsewhere.',
                                     b'x-amz-bucket-region: eu-west-2'))
        with pytest.raises(S3Error) as raised:
            await s3.get('a')
    assert str(raised.value) == ('S3 answered 301 PermanentRedirect: Elsewhere. (GET in bucket, '
                                 'which is in eu-west-2, request id id-in-body)')


@on_loops
async def test_s3_may_say_how_long_to_wait(slept):
    told = []
    async with bucket(on_retry=lambda *args: told.append(args)) as (s3, store):
        store.objects['a'] = b'1'
        store.answer('GET .*', fault(503, 'SlowDown', '', b'retry-after: 30'))
        await (await s3.get('a')).read()
    assert 30 <= slept[0] <= 60
    assert [(attempt, type(error)) for attempt, _, error in told] == [(1, S3Busy)]


@on_loops
async def test_a_request_that_can_not_be_made(slept):
    """Also after several times, nothing was sent, and the error says so."""
    async with bucket(endpoint='http://127.0.0.1:1') as (s3, _):
        with pytest.raises(HttpConnectionError):
            await s3.put('a', b'1')
    assert len(slept) == 4


@pytest.mark.parametrize('ask', ['put', 'download', 'delete_many', 'delete_one'])
@on_one_loop
async def test_of_several_requests_something_was_sent(ask, tmp_path):
    """So it is no HttpConnectionError if the last ones can not be made."""
    async def connect(scheme, host, port):
        if store.asked:
            raise OSError('gone')
        return await socket_to(socket.AF_INET, (host, port))

    async with bucket(pool_options={'get_connection': connect}, parallel=1) as (s3, store):
        store.objects['a'] = b'0123456789'
        close = (b'connection: close',)
        store.answer('POST .*uploads=', response(
            200, xml('InitiateMultipartUploadResult', '<UploadId>1</UploadId>'), *close))
        store.answer('POST .*delete=', response(200, xml('DeleteResult', ''), *close))
        store.answer('GET .*', response(206, b'01', b'content-range: bytes 0-1/10', b'etag: "a"',
                                        *close))
        store.answer('DELETE .*', response(200, b'', *close))
        with pytest.raises(HttpDataError, match='gone') as raised:
            await {'put': lambda: s3.put('a', LARGE, part_size=PART),
                   'download': lambda: s3.download('a', tmp_path / 'a', part_size=2),
                   'delete_many': lambda: s3.delete_many(map(str, range(1001))),
                   'delete_one': lambda: s3.delete_many(['\x00', 'a'])}[ask]()
    assert isinstance(raised.value.__cause__, HttpConnectionError)
    assert (raised.value.response_started, raised.value.phase) == (True, Phase.CONNECT)


# ------------------------------------------------------------------------------- credentials


class Changing:
    """Credentials that are other ones after each `forget`."""

    def __init__(self):
        self.number = 0

    async def __call__(self):
        return f'AKID{self.number}', 'secret', ()

    def forget(self):
        self.number += 1


@pytest.mark.parametrize('method, answer', [
    ('get', fault(400, 'ExpiredToken')), ('get', fault(403, 'InvalidAccessKeyId')),
    ('head', response(400)), ('delete', fault(400, 'InvalidToken'))])
@on_loops
async def test_credentials_that_are_refused_are_asked_for_once_more(slept, method, answer):
    async with bucket(credentials=Changing()) as (s3, store):
        store.objects['a'] = b'1'
        store.answer('.*', answer)
        await getattr(s3, method)('a')
        store.answer('.*', answer, answer)
        with pytest.raises(S3CredentialsRefused):
            await getattr(s3, method)('a')
    assert [re.search(b'AKID[0-9]', head)[0] for head in store.heads] == [
        b'AKID0', b'AKID1', b'AKID1', b'AKID2']
    assert slept == [0, 0]


@on_loops
async def test_credentials_that_do_not_change_are_not_asked_for_again():
    async with bucket() as (s3, store):
        store.answer('GET .*', fault(400, 'ExpiredToken', 'It has expired.'))
        with pytest.raises(S3CredentialsRefused, match='ExpiredToken: It has expired'):
            await s3.get('a')
        store.answer('HEAD .*', response(400))
        with pytest.raises(S3Error, match='400 Bad Request') as raised:
            await s3.head('a')
        assert type(raised.value) is S3Error
    assert len(store.asked) == 2


@on_loops
async def test_a_bucket_of_aws_is_signed_for_its_own_host():
    async def sink(method, url, **kwargs):
        asked.append((url, dict(kwargs['headers'])))
        return b'200', (), streamed(b'')()

    asked = []
    await Bucket(sink, 'bucket', credentials, 'us-east-1').put('a', b'')
    (url, fields), = asked
    assert url == 'https://bucket.s3.us-east-1.amazonaws.com/a'
    assert fields[b'host'] == b'bucket.s3.us-east-1.amazonaws.com'
    assert b'SignedHeaders=content-length;host;' in fields[b'authorization']
    assert b'/us-east-1/s3/aws4_request' in fields[b'authorization']


# -------------------------------------------------------------------------------- the bucket


@pytest.mark.parametrize('name, region, options, url', [
    ('a-b', 'eu-west-2', {}, 'https://a-b.s3.eu-west-2.amazonaws.com'),
    ('a.b', 'eu-west-2', {}, 'https://s3.eu-west-2.amazonaws.com/a.b'),
    ('a.b', 'eu-west-2', {'path_style': False}, 'https://a.b.s3.eu-west-2.amazonaws.com'),
    ('a-b', 'eu-west-2', {'path_style': True}, 'https://s3.eu-west-2.amazonaws.com/a-b'),
    ('a-b', 'cn-north-1', {}, 'https://a-b.s3.cn-north-1.amazonaws.com.cn'),
    ('a-b', 'x', {'endpoint': 'HTTP://h:9000/'}, 'http://h:9000/a-b'),
    ('a-b', 'x', {'endpoint': 'https://h/s3'}, 'https://h/s3/a-b'),
    ('a-b', 'x', {'endpoint': 'https://h', 'path_style': False}, 'https://a-b.h')])
def test_the_url_of_a_bucket(name, region, options, url):
    s3 = Bucket(print, name, credentials, region, **options)
    assert s3.url == url
    assert repr(s3) == f'<Bucket {name!r} at {url}>'


@pytest.mark.parametrize('name, region, options, message', [
    ('', 'x', {}, 'name must be the name of a bucket: letters, .*, got \'\''),
    ('a/b', 'x', {}, "got 'a/b'"), (b'ab', 'x', {}, "got b'ab'"),
    ('ab', 'x/', {}, 'region must be a str of letters'),
    ('ab', 'x', {'endpoint': 'h'}, "endpoint must begin with http:// or https:// .*, got 'h'"),
    ('ab', 'x', {'endpoint': 'ftp://h'}, 'endpoint must begin'),
    ('ab', 'x', {'endpoint': 'http://h?a'}, 'have no query and no fragment'),
    ('ab', 'x', {'endpoint': 'http://u:p@h'}, 'without userinfo'),
    ('ab', 'x', {'part_size': 1}, 'part_size must be a whole number, 5242880 or more, got 1'),
    ('ab', 'x', {'parallel': 0}, 'parallel must be a whole number, 1 or more, got 0')])
def test_what_makes_no_bucket(name, region, options, message):
    with pytest.raises(ValueError, match=message):
        Bucket(print, name, credentials, region, **options)


def test_a_bucket_belongs_to_its_process():
    with pytest.raises(TypeError, match='can not be pickled, because it belongs to the pool of '
                                        'one process: pickle its arguments'):
        pickle.dumps(Bucket(print, 'ab', credentials, 'x'))


KEYS = ['a b', '#', '?', '%', '%20', '+', '//', 'a//b', '/', '/a', 'a/', '.', '..', 'a/../b',
        './a', 'é', 'e\u0301', '\U0001f600', '~', '*', "'", '"', '\\', '&=', '<>', '\x01', '\n']


@on_one_loop
async def test_each_key_is_itself():
    async with bucket() as (s3, store):
        for key in KEYS:
            await s3.put(key, key.encode())
            assert await (await s3.get(key)).read() == key.encode()
    assert store.asked[1::2] == [f'GET {urllib.parse.quote("/bucket/" + key)}' for key in KEYS]


@on_loops
async def test_a_url_that_anybody_can_use():
    async with bucket() as (s3, store):
        url = await s3.presigned('my key', method=b'PUT', expires=60,
                                 params=(('x-id', 'PutObject'),),
                                 headers=((b'content-type', b'text/plain'),))
    query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(url).query))
    assert url.startswith(s3.url + '/my%20key?')
    assert query['X-Amz-Expires'] == '60'
    assert query['X-Amz-SignedHeaders'] == 'content-type;host'
    assert query['x-id'] == 'PutObject'
    assert store.asked == []


def test_the_example_of_the_readme(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with internet(Store(''), '*.s3.eu-west-2.amazonaws.com'):
        for block in python_blocks(HERE / 'README.md'):
            run_block(block)
    assert capsys.readouterr().out == (
        f"11 {etag_of(b'The content')}\nb'The content'\nNothing new\nreports/1 11\n"
        "b'404' my-bucket my key #1\n")
