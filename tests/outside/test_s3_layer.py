"""lowhaio_s3 with servers of S3's protocol that others have written, and boto3 beside it.

Each test is run with each of the servers. What one of them does in another way is a row of
`DIFFERENCES`, with the reason, and the test states what happens then. docs/peers/s3.md has all
that these servers do.
"""

import asyncio
import contextlib
import datetime
import hashlib
import json
import pathlib
import random
import re
import urllib.request

import boto3
import botocore.config
import botocore.exceptions
import pytest
from lowhaio_s3 import (
    Bucket,
    S3CredentialsRefused,
    S3Error,
    S3NotFound,
    S3NotModified,
    S3PreconditionFailed,
)

from lowhaio import HttpError, buffered, streamed
from tests.harness import on_loops, on_one_loop, pool

MIB = 2 ** 20

# From the name of a server, and of what is different with it, to the reason.
DIFFERENCES = {
    ('rclone', 'conditions'): 'it ignores conditions, when it writes and when it deletes',
    ('s3rver', 'conditions'): 'it ignores conditions, when it writes and when it deletes',
    ('radosgw', 'conditional delete'): 'it ignores conditions when it deletes',
    ('radosgw', 'write if-match'): 'it refuses a PUT with the ETag that it has told',
    ('s3rver', 'first byte'): 'it sends all for the range of the first byte',
    ('s3rver', 'suffix'): 'it takes the last three bytes for the first four',
    ('s3rver', 'empty range'): 'it promises one byte of an empty object, and closes',
    ('rclone', 'long suffix'): 'it refuses the last bytes of an object that has fewer',
    ('s3rver', 'abort'): 'it has no way to abort an upload, or to list the uploads',
    ('rclone', 'etag of parts'): 'it tells one in the end, and another one later',
    ('s3rver', 'etag of parts'): 'it is of another form',
    ('rclone', 'other delimiters'): 'it knows no other delimiter than "/"',
    ('rclone', 'copied metadata'): 'it adds the time of the source',
    ('s3rver', 'copies of odd keys'): 'it does not decode the key of the source',
    ('moto', 'signatures'): 'it accepts any signature',
    ('s3rver', 'signatures'): 'it accepts any signature of the credentials that it knows',
    ('SeaweedFS', 'tokens'): 'it refuses session tokens that it has not made',
    ('SeaweedFS', 'missing buckets'): 'it makes a bucket when something is written into it',
    ('rclone', 'versions'): 'it keeps no versions',
    ('s3rver', 'versions'): 'it keeps no versions',
    ('moto', 'checksums'): 'it keeps no checksum that a client has made',
    ('s3rver', 'checksums'): 'it keeps no checksum',
    ('radosgw', 'checksums'): 'it keeps no checksum',
}

# The same for keys: what they become. Elsewhere each object is what was written, under its key.
KEYS_THAT_CHANGE = {
    'rclone': {
        **dict.fromkeys(('//a', '/a', 'a//b', 'a//', '/', '/../../etc'), 'refused: an empty name'),
        **dict.fromkeys(('.', '..', './a', '../a', 'a/./b', 'a/../b', 'a/..', 'a/.'),
                        'refused: no name of a file'),
        'd/': 'a file without the slash',
    },
    'SeaweedFS': {
        **dict.fromkeys(('.', '..', './a', '../a', 'a/./b', 'a/../b', 'a/..', 'a/.',
                         '/../../etc'), 'refused: no name of a file'),
        **dict.fromkeys(('d/', '/', 'a//'), 'the content is dropped'),
        **dict.fromkeys(('//a', '/a', 'a//b'), 'slashes that follow another are dropped'),
        **dict.fromkeys(('a\\b', '100% "<>^`{|}\\[]'), 'a slash in place of the backslash'),
    },
    'moto': {},
    's3rver': {
        **dict.fromkeys(('/', '/a', '//a', 'a//b', 'a//', '/../../etc'),
                        'refused: an empty name'),
        **dict.fromkeys(('./a', '../a', 'a/./b', 'a/../b'), 'listed as a path without dots'),
    },
    'radosgw': {},
}


def differs(s3, what):
    """Whether this server has a row."""
    assert any(what == row for _, row in DIFFERENCES)
    return (s3.name, what) in DIFFERENCES


@pytest.fixture(scope='session')
def client(s3):
    """One of boto3's. It takes long to make."""
    return boto3.client(
        's3', region_name='us-east-1', endpoint_url=s3.url, aws_access_key_id=s3.access_key_id,
        aws_secret_access_key=s3.secret_access_key, config=botocore.config.Config(
            s3={'addressing_style': 'path'}, signature_version='s3v4',
            retries={'max_attempts': 1}))


@pytest.fixture
def boto(client):
    """A context of that client, which leaves no connection behind."""
    @contextlib.contextmanager
    def connected():
        try:
            yield client
        finally:
            client.close()

    return connected


NAME = 'layer'


def make_bucket(client, name):
    with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou,
                             client.exceptions.BucketAlreadyExists):
        client.create_bucket(Bucket=name)


@pytest.fixture
def name(s3, boto):
    """Of a bucket without objects."""
    with boto() as client:
        make_bucket(client, NAME)
        for each in client.list_objects_v2(Bucket=NAME).get('Contents', ()):
            client.delete_object(Bucket=NAME, Key=each['Key'])
    return NAME


@contextlib.asynccontextmanager
async def bucket_of(s3, name=NAME, **options):
    async with pool() as request:
        yield Bucket(request, name, s3.credentials, 'us-east-1', endpoint=s3.url, **options)


def read_by(client, key, name=NAME):
    got = client.get_object(Bucket=name, Key=key)
    with contextlib.closing(got['Body']) as body:
        return body.read()


def metadata_of(told):
    """boto3 keeps the case of the names, as rclone sends them."""
    return {name.lower(): value for name, value in told['Metadata'].items()}


def some(size):
    """So many bytes, of which no two parts are the same."""
    return random.Random(size).randbytes(size)


async def raises(kind, awaitable):
    with pytest.raises(kind) as caught:
        await awaitable
    return caught.value


# ------------------------------------------------------------------------------------------ keys

OF_THE_LAYER = json.loads((pathlib.Path(__file__).parents[2] / 'layers' / 'aws_sigv4' / (
    'keys.json')).read_text(encoding='utf-8'))
# Names of files have 255 bytes at most.
LONG = '/'.join(['x' * 200] * 5).ljust(1024, 'y')
KEYS = [key for key in (*OF_THE_LAYER['like files'], *OF_THE_LAYER['unlike files'])
        if max(map(len, key.split('/'))) < 200 and '\x01' not in key and '\udbff' not in key] + [
    'a\\b', "it's", '"', '<key>&amp;', 'a=b&c', 'a;b', '\u00e9', '\U0001f600\U00010fff', '\uffee',
    'ein Schl\u00fcssel', '\u30ad\u30fc', ' ', 'a%', '%41', '..b', '~', '*', LONG]


def test_there_are_forty_keys():
    assert len(set(KEYS)) == len(KEYS) >= 40


@on_one_loop
async def test_boto3_reads_what_the_layer_wrote_and_the_reverse(s3, boto):
    async with bucket_of(s3, 'keys') as bucket:
        with boto() as client:
            make_bucket(client, 'keys')
            changed = [key for key in KEYS if not await is_kept(bucket, client, key)]
    assert changed == [key for key in KEYS if key in KEYS_THAT_CHANGE[s3.name]]


async def is_kept(bucket, client, key):
    """Whether an object is under its key what was written, and listed, by both of them."""
    content = key.encode() * 2
    try:
        await bucket.put(key, content)
        is_kept = read_by(client, key, bucket.name) == content
        client.put_object(Bucket=bucket.name, Key=key, Body=content[::-1])
        is_kept &= await (await bucket.get(key)).read() == content[::-1]
        theirs = client.list_objects_v2(Bucket=bucket.name).get('Contents', ())
        ours = [each.key async for page in bucket.list() for each in page.objects]
        return is_kept and ours == [each['Key'] for each in theirs] == [key]
    except (S3Error, botocore.exceptions.ClientError):
        return False
    finally:
        for each in client.list_objects_v2(Bucket=bucket.name).get('Contents', ()):
            await bucket.delete(each['Key'])


# ------------------------------------------------------------------------------ reading, writing


def stream_of(content, size=100_000):
    async def stream():
        for start in range(0, len(content), size):
            yield content[start:start + size]

    return stream


@on_loops
async def test_an_object_from_each_source(s3, boto, name, tmp_path):
    content = some(200_000)
    path = tmp_path / 'file'
    path.write_bytes(content)
    async with bucket_of(s3) as bucket:
        for data in (content, bytearray(content), path, stream_of(content), stream_of(content)()):
            moved = []
            written = await bucket.put(
                'key', data, content_type='text/x', metadata={'a-b': 'c d'},
                headers=((b'cache-control', b'no-cache'),), on_progress=moved.append)
            assert (written.key, written.etag, written.parts) == (
                'key', f'"{hashlib.md5(content).hexdigest()}"', 0)
            assert sum(moved) == len(content)
            with boto() as client:
                assert read_by(client, 'key') == content
                told = client.head_object(Bucket=name, Key='key')
            assert (told['ContentType'], metadata_of(told), told['CacheControl']) == (
                'text/x', {'a-b': 'c d'}, 'no-cache')
            await bucket.delete('key')


@on_one_loop
async def test_what_is_told_of_an_object(s3, boto, name):
    with boto() as client:
        client.put_object(Bucket=name, Key='a b', Body=b'content', ContentType='text/x',
                          Metadata={'a-b': 'c'})
    async with bucket_of(s3) as bucket:
        content = await bucket.get('a b')
        assert await content.read() == b'content'
        for info in await bucket.head('a b'), content.info:
            assert (info.key, info.size, info.etag, info.content_type, info.metadata) == (
                'a b', 7, f'"{hashlib.md5(b"content").hexdigest()}"', 'text/x', {'a-b': 'c'})
            age = datetime.datetime.now(datetime.UTC) - info.modified
            assert abs(age) < datetime.timedelta(minutes=1)


@on_one_loop
async def test_ranges(s3, name):
    content = some(1000)
    async with bucket_of(s3) as bucket:
        await bucket.put('key', content)
        if differs(s3, 'first byte'):
            await raises(S3Error, bucket.get('key', start=0, stop=1))
        else:
            assert await (await bucket.get('key', start=0, stop=1)).read() == content[:1]
        for start, stop in ((0, 2), (1, 3), (10, None), (0, 1000), (999, None), (990, 2000)):
            got = await bucket.get('key', start=start, stop=stop)
            assert got.info.size == 1000
            assert await got.read() == content[start:stop]
        if differs(s3, 'suffix'):
            # It is noticed.
            await raises(S3Error, bucket.get('key', start=-3))
        else:
            assert await (await bucket.get('key', start=-3)).read() == content[-3:]
        error = await raises(S3Error, bucket.get('key', start=1000))
        assert (error.status, error.code) == (b'416', 'InvalidRange')
        if differs(s3, 'long suffix'):
            error = await raises(S3Error, bucket.get('key', start=-2000))
            assert error.status == b'416'
        elif not differs(s3, 'suffix'):
            assert await (await bucket.get('key', start=-2000)).read() == content


@on_one_loop
async def test_an_empty_object(s3, boto, name, tmp_path):
    async with bucket_of(s3) as bucket:
        written = await bucket.put('empty', b'')
        assert written.etag == f'"{hashlib.md5().hexdigest()}"'
        assert await (await bucket.get('empty')).read() == b''
        if differs(s3, 'empty range'):
            return
        info = await bucket.download('empty', tmp_path / 'file')
        assert (info.size, (tmp_path / 'file').read_bytes()) == (0, b'')
        chunks = []
        await bucket.download('empty', chunks.append)
        assert b''.join(chunks) == b''
    with boto() as client:
        assert read_by(client, 'empty') == b''


@on_one_loop
async def test_a_content_that_is_not_read_to_its_end(s3, name):
    async with bucket_of(s3) as bucket:
        await bucket.put('key', some(3 * MIB))
        async with await bucket.get('key') as content:
            assert len(await anext(content)) > 0
        content = await bucket.get('key')
        await content.aclose()
        assert (await bucket.head('key')).size == 3 * MIB


# ------------------------------------------------------------------------------------ conditions


@on_one_loop
async def test_reading_on_a_condition(s3, name):
    async with bucket_of(s3) as bucket:
        etag = (await bucket.put('key', b'content')).etag
        assert await (await bucket.get('key', if_match=etag)).read() == b'content'
        assert await (await bucket.get('key', if_none_match='"0"')).read() == b'content'
        # Also where the server ignores the condition: the response tells its ETag.
        await raises(S3PreconditionFailed, bucket.get('key', if_match='"0"'))
        error = await raises(S3NotModified, bucket.get('key', if_none_match=etag))
        assert error.status == b'304'
        error = await raises(S3NotModified, bucket.head('key', if_none_match=etag))
        assert error.status == b'304'


@on_one_loop
async def test_writing_on_a_condition(s3, name):
    async with bucket_of(s3) as bucket:
        await bucket.put('key', b'first', if_none_match='*')
        etag = (await bucket.head('key')).etag
        refused = (bucket.put('key', b'second', if_none_match='*'),
                   bucket.put('key', b'second', if_match='"0"'),
                   bucket.put('key', stream_of(b'second'), if_none_match='*'))
        for attempt in refused:
            if differs(s3, 'conditions'):
                await attempt
                assert await (await bucket.get('key')).read() == b'second'
            else:
                assert (await raises(S3PreconditionFailed, attempt)).status == b'412'
                assert await (await bucket.get('key')).read() == b'first'
        if differs(s3, 'write if-match'):
            await raises(S3PreconditionFailed, bucket.put('key', b'third', if_match=etag))
        elif not differs(s3, 'conditions'):
            await bucket.put('key', b'third', if_match=etag)
            assert await (await bucket.get('key')).read() == b'third'


@on_one_loop
async def test_deleting_on_a_condition(s3, name):
    async with bucket_of(s3) as bucket:
        etag = (await bucket.put('key', b'content')).etag
        attempt = bucket.delete('key', if_match='"0"')
        if differs(s3, 'conditions') or differs(s3, 'conditional delete'):
            await attempt
            await raises(S3NotFound, bucket.head('key'))
        else:
            await raises(S3PreconditionFailed, attempt)
            await bucket.head('key')
            await bucket.delete('key', if_match=etag)
            await raises(S3NotFound, bucket.head('key'))


# ----------------------------------------------------------------------------- multipart uploads

PART = 5 * MIB
LARGE = some(3 * PART + 1)


def uploads_left(client):
    return client.list_multipart_uploads(Bucket=NAME).get('Uploads', [])


@on_one_loop
async def test_parts_are_sent_side_by_side(s3, boto, name, tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(LARGE)
    async with bucket_of(s3, part_size=PART) as bucket:
        for data in LARGE, path, stream_of(LARGE):
            moved = []
            written = await bucket.put('large', data, parallel=3, content_type='text/x',
                                       metadata={'a': 'b'}, on_progress=moved.append)
            assert (written.parts, sum(moved)) == (4, len(LARGE))
            with boto() as client:
                told = client.head_object(Bucket=name, Key='large')
                assert (told['ContentLength'], told['ContentType'], metadata_of(told)) == (
                    len(LARGE), 'text/x', {'a': 'b'})
                assert read_by(client, 'large') == LARGE
            if differs(s3, 'etag of parts'):
                assert (written.etag, told['ETag'][-3:]) != (told['ETag'], '-4"')
            else:
                assert (written.etag, written.etag[-3:]) == (told['ETag'], '-4"')


class Broken(Exception):
    pass


@on_one_loop
async def test_an_upload_that_fails_is_aborted(s3, boto, name, caplog):
    async def stream():
        for start in range(0, 2 * PART + 1, MIB):
            yield LARGE[start:start + MIB]
        raise Broken

    async with bucket_of(s3, part_size=PART) as bucket:
        await raises(Broken, bucket.put('large', stream, parallel=2))
        await raises(S3NotFound, bucket.head('large'))
    check_abort(s3, boto, caplog)


@on_loops
async def test_an_upload_that_is_cancelled_is_aborted(s3, boto, name, caplog):
    sent = asyncio.Event()

    async def stream():
        for start in range(0, 2 * PART + 1, MIB):
            yield LARGE[start:start + MIB]
        sent.set()
        await asyncio.Event().wait()

    async with bucket_of(s3, part_size=PART) as bucket:
        upload = asyncio.create_task(bucket.put('large', stream, parallel=2))
        await sent.wait()
        upload.cancel()
        await raises(asyncio.CancelledError, upload)
        await raises(S3NotFound, bucket.head('large'))
    check_abort(s3, boto, caplog)


def check_abort(s3, boto, caplog):
    messages = [record.getMessage() for record in caplog.records if record.name == 'lowhaio_s3']
    if differs(s3, 'abort'):
        assert len(messages) == 1
        assert re.match(r'The multipart upload \S+ to layer was not aborted: S3 answered 405 ',
                        messages[0])
        return
    assert messages == []
    with boto() as client:
        assert uploads_left(client) == []


@on_one_loop
async def test_parts_on_a_condition(s3, boto, name):
    async with bucket_of(s3, part_size=PART) as bucket:
        await bucket.put('large', b'first')
        attempt = bucket.put('large', LARGE, if_none_match='*')
        if differs(s3, 'conditions') or s3.name == 'radosgw':
            await attempt
            assert (await bucket.head('large')).size == len(LARGE)
        else:
            await raises(S3PreconditionFailed, attempt)
            assert await (await bucket.get('large')).read() == b'first'
            with boto() as client:
                assert uploads_left(client) == []


# ------------------------------------------------------------------------------------- downloads


@contextlib.asynccontextmanager
async def cutting(s3, cuts):
    """A server in front of this one. Its connections break after so many bytes of responses."""
    relays = []

    async def copy(reader, writer, left=10 ** 12):
        with contextlib.suppress(OSError):
            while left > 0 and (data := await reader.read(min(left, 65536))):
                left -= len(data)
                writer.write(data)
                await writer.drain()
        writer.close()

    async def relay(reader, writer):
        relays.append(asyncio.current_task())
        host, port = s3.url.removeprefix('http://').split(':')
        upstream, to_upstream = await asyncio.open_connection(host, int(port))
        asking = asyncio.create_task(copy(reader, to_upstream))
        await copy(upstream, writer, *([cuts.pop(0)] if cuts else []))
        to_upstream.close()
        await asking
        for each in writer, to_upstream:
            with contextlib.suppress(OSError):
                await each.wait_closed()

    async with await asyncio.start_server(relay, '127.0.0.1', 0) as server:
        port = server.sockets[0].getsockname()[1]
        yield s3._replace(url=f'http://127.0.0.1:{port}')
        # What asked has closed its connections.
        await asyncio.gather(*relays)


@on_loops
async def test_a_download_in_parts(s3, boto, name, tmp_path):
    with boto() as client:
        client.put_object(Bucket=name, Key='large', Body=LARGE)
    path = tmp_path / 'file'
    async with bucket_of(s3) as bucket:
        moved = []
        info = await bucket.download('large', path, parallel=3, part_size=3 * MIB,
                                     on_progress=moved.append)
        assert (info.size, sum(moved)) == (len(LARGE), len(LARGE))
        assert path.read_bytes() == LARGE
        assert list(tmp_path.iterdir()) == [path]
        with open(path, 'r+b') as file:
            file.truncate(0)
            await bucket.download('large', file, part_size=MIB, if_match=info.etag)
        assert path.read_bytes() == LARGE
        chunks = []
        await bucket.download('large', chunks.append)
        assert b''.join(chunks) == LARGE
        await raises(S3NotFound, bucket.download('missing', path))
        await raises(S3PreconditionFailed, bucket.download('large', path, if_match='"0"'))
        assert path.read_bytes() == LARGE


@on_loops
async def test_a_content_goes_on_where_it_broke_off(s3, boto, name):
    with boto() as client:
        client.put_object(Bucket=name, Key='large', Body=LARGE)
    async with cutting(s3, [4 * MIB, 3 * MIB, 0]) as other, bucket_of(other) as bucket:
        assert await (await bucket.get('large')).read() == LARGE
    async with cutting(s3, [MIB, MIB, MIB]) as other, bucket_of(other) as bucket:
        chunks = []
        await bucket.download('large', chunks.append, parallel=3, part_size=2 * MIB)
        assert b''.join(chunks) == LARGE


@on_one_loop
async def test_an_object_that_changes_while_it_is_read(s3, boto, name):
    with boto() as client:
        client.put_object(Bucket=name, Key='large', Body=LARGE)
    async with cutting(s3, [8 * MIB]) as other, bucket_of(other) as bucket:
        content = await bucket.get('large')
        await anext(content)
        with boto() as client:
            client.put_object(Bucket=name, Key='large', Body=LARGE[::-1])
        with pytest.raises((HttpError, S3PreconditionFailed)):
            await content.read()


# -------------------------------------------------------------------------------------- listings


@on_one_loop
async def test_a_listing(s3, boto, name):
    keys = [f'{folder}/{number:02} +%&' for folder in 'ab' for number in range(12)] + ['c', 'd é']
    async with bucket_of(s3) as bucket:
        for key in keys:
            await bucket.put(key, key.encode())

        async def listed(*args, **options):
            pages = [page async for page in bucket.list(*args, **options)]
            return ([each.key for page in pages for each in page.objects],
                    [prefix for page in pages for prefix in page.prefixes])

        assert await listed() == (keys, [])
        assert await listed(page_size=5) == (keys, [])
        assert await listed(delimiter='/', page_size=1) == (['c', 'd é'], ['a/', 'b/'])
        assert await listed('b/') == (keys[12:24], [])
        assert await listed('b/0') == (keys[12:22], [])
        assert await listed(delimiter='/') == (['c', 'd é'], ['a/', 'b/'])
        assert await listed(start_after='b/05 +%&') == (keys[18:], [])
        assert await listed('none') == ([], [])
        if differs(s3, 'other delimiters'):
            assert (await listed(delimiter=' '))[1] == []
        else:
            assert (await listed('a/', delimiter='+'))[1] == [
                f'a/{number:02} +' for number in range(12)]
        page = await anext(bucket.list('c'))
        each = page.objects[0]
        info = await bucket.head('c')
        assert (each.size, each.etag) == (1, info.etag)
        assert abs(each.modified - info.modified) < datetime.timedelta(seconds=2)


@on_one_loop
async def test_2500_keys_are_deleted(s3, boto, name):
    keys = [f'some/key {number:04} é&<' for number in range(2500)]
    async with bucket_of(s3) as bucket:
        there = keys[::50]
        for key in (*there, 'other'):
            await bucket.put(key, b'')
        assert await bucket.delete_many(keys) == 2500
        assert [each.key async for page in bucket.list() for each in page.objects] == ['other']

        async def more():
            yield 'other'
            yield 'missing'

        assert await bucket.delete_many(more()) == 2
        assert [each async for page in bucket.list() for each in page.objects] == []


# ---------------------------------------------------------------------------------------- copies


@on_one_loop
async def test_copies(s3, boto, name):
    with boto() as client:
        client.put_object(Bucket=name, Key='source', Body=b'content', ContentType='text/x',
                          Metadata={'a': 'b'})
        make_bucket(client, 'other')
        client.put_object(Bucket='other', Key='source', Body=b'other')
        odd = 'é #?+%2F&'
        client.put_object(Bucket=name, Key=odd, Body=b'odd')
    async with bucket_of(s3) as bucket, bucket_of(s3, 'other') as other:
        written = await bucket.copy('source', 'a b')
        info = await bucket.head('a b')
        assert written.etag == info.etag
        assert (info.content_type, info.metadata['a']) == ('text/x', 'b')
        if not differs(s3, 'copied metadata'):
            assert info.metadata == {'a': 'b'}
        assert await (await bucket.get('a b')).read() == b'content'
        await bucket.copy('source', 'from other', source=other)
        assert await (await bucket.get('from other')).read() == b'other'
        await bucket.copy('source', 'a b', headers=(
            (b'x-amz-metadata-directive', b'REPLACE'), (b'x-amz-meta-a', b'c')))
        assert (await bucket.head('a b')).metadata['a'] == 'c'
        attempt = bucket.copy(odd, 'from odd')
        if differs(s3, 'copies of odd keys'):
            await raises(S3NotFound, attempt)
        else:
            await attempt
            assert await (await bucket.get('from odd')).read() == b'odd'
        await raises(S3NotFound, bucket.copy('missing', 'copy'))


# --------------------------------------------------------------------------------------- presigned


def fetched(url, **kwargs):
    """The content, the way Python's own client gets it."""
    with urllib.request.urlopen(urllib.request.Request(url, **kwargs), timeout=10) as response:
        return response.read(), response.headers


@on_one_loop
async def test_presigned_urls_are_for_anybody(s3, boto, name):
    odd = 'a/é #?+%2F&'
    async with bucket_of(s3) as bucket, pool() as request:
        url = await bucket.presigned(odd, method=b'PUT', expires=60)
        code, _, body = await request(
            b'PUT', url, body=streamed(b'put'), headers=((b'content-length', b'3'),))
        assert (code, await buffered(body)) == (b'200', b'')
        url = await bucket.presigned(odd, params=(
            ('response-content-type', 'text/other; charset="x"'),
            ('response-content-disposition', 'attachment; filename="a+b é"')))
        code, fields, body = await request(b'GET', url)
        assert (code, await buffered(body)) == (b'200', b'put')
        assert dict(fields)[b'content-type'] == b'text/other; charset="x"'
        content, fields = await asyncio.to_thread(fetched, url)
        assert (content, fields['content-type']) == (b'put', 'text/other; charset="x"')
        url = await bucket.presigned(odd, method=b'PUT', headers=((b'content-type', b'text/x'),))
        await asyncio.to_thread(fetched, url, data=b'other', method='PUT', headers={
            'content-type': 'text/x'})
        assert (await bucket.head(odd)).content_type == 'text/x'
        if not differs(s3, 'signatures'):
            code, _, body = await request(
                b'GET', (await bucket.presigned(odd)).replace('%C3%A9', 'e'))
            assert (code, b'SignatureDoesNotMatch' in await buffered(body)) == (b'403', True)


@on_one_loop
async def test_a_presigned_url_with_a_token(s3, name):
    async def credentials():
        return s3.access_key_id, s3.secret_access_key, ((b'x-amz-security-token', b'a/b+c='),)

    async with bucket_of(s3) as bucket, pool() as request:
        await bucket.put('key', b'content')
        bucket = Bucket(request, name, credentials, 'us-east-1', endpoint=s3.url)
        url = await bucket.presigned('key')
        assert 'X-Amz-Security-Token=a%2Fb%2Bc%3D' in url
        code, _, body = await request(b'GET', url)
        content = await buffered(body)
        if differs(s3, 'tokens'):
            assert (code, b'InvalidAccessKeyId' in content) == (b'403', True)
        else:
            assert (code, content) == (b'200', b'content')


@on_one_loop
async def test_urls_that_botocore_presigned(s3, boto, name):
    odd = 'a/é #?+%2F&'
    with boto() as client:
        put, get = (client.generate_presigned_url(
            operation, Params={'Bucket': name, 'Key': odd, **params}) for operation, params in (
                ('put_object', {}),
                ('get_object', {'ResponseContentType': 'text/other; charset="x"'})))
    async with pool() as request:
        code, _, body = await request(
            b'PUT', put, body=streamed(b'put'), headers=((b'content-length', b'3'),))
        assert (code, await buffered(body)) == (b'200', b'')
        code, fields, body = await request(b'GET', get)
        assert (code, await buffered(body)) == (b'200', b'put')
        assert dict(fields)[b'content-type'] == b'text/other; charset="x"'


# ------------------------------------------------------------------------------------- checksums


@pytest.mark.parametrize('checksum', ['crc32', 'crc32c', 'crc64nvme', 'sha1', 'sha256'])
@on_one_loop
async def test_checksums(s3, boto, name, checksum):
    content = some(100_000)
    async with bucket_of(s3, checksum=checksum) as bucket:
        for data in content, stream_of(content):
            await bucket.put('key', data)
            got = await bucket.get('key')
            assert await got.read() == content
            field = b'x-amz-checksum-' + checksum.encode()
            assert (field in dict(got.info.headers)) == (not differs(s3, 'checksums'))
            got = await bucket.get('key', start=10, stop=20)
            assert await got.read() == content[10:20]


@on_one_loop
async def test_a_checksum_of_parts(s3, boto, name):
    async with bucket_of(s3, checksum='crc32', part_size=PART) as bucket:
        assert (await bucket.put('large', LARGE)).parts == 4
        assert await (await bucket.get('large')).read() == LARGE
        chunks = []
        await bucket.download('large', chunks.append)
        assert b''.join(chunks) == LARGE


@on_one_loop
async def test_what_boto3_wrote_with_a_checksum(s3, boto, name):
    with boto() as client:
        client.put_object(Bucket=name, Key='key', Body=b'content', ChecksumAlgorithm='SHA256')
    async with bucket_of(s3) as bucket:
        assert await (await bucket.get('key')).read() == b'content'
        assert await (await bucket.get('key', start=1, stop=3)).read() == b'on'


@on_one_loop
async def test_a_payload_that_is_not_signed(s3, boto, name):
    async with bucket_of(s3, signed_payload=False, part_size=PART) as bucket:
        await bucket.put('key', b'content')
        assert (await bucket.put('large', LARGE)).parts == 4
    with boto() as client:
        assert read_by(client, 'key') == b'content'
        assert read_by(client, 'large') == LARGE


# -------------------------------------------------------------------------------- errors, versions


@on_one_loop
async def test_what_is_not_there(s3, name):
    async with bucket_of(s3) as bucket:
        error = await raises(S3NotFound, bucket.get('missing'))
        assert (error.status, error.code, error.bucket, error.key) == (
            b'404', 'NoSuchKey', name, 'missing')
        error = await raises(S3NotFound, bucket.head('missing'))
        assert (error.status, error.code) == (b'404', 'Not Found')
        await bucket.delete('missing')
    async with bucket_of(s3, 'missing-bucket') as bucket:
        for attempt in bucket.get('key'), anext(bucket.list()):
            assert (await raises(S3NotFound, attempt)).code == 'NoSuchBucket'
    async with bucket_of(s3, 'made-by-a-put') as bucket:
        attempt = bucket.put('key', b'')
        if differs(s3, 'missing buckets'):
            await attempt
        else:
            assert (await raises(S3NotFound, attempt)).code == 'NoSuchBucket'


class Wrong:
    """Credentials whose first ones are refused."""

    def __init__(self, s3, first):
        self.s3 = s3
        self.all = [first]
        self.forgotten = 0

    async def __call__(self):
        return (*self.all[0], ()) if self.all else await self.s3.credentials()

    def forget(self):
        self.forgotten += 1
        self.all.clear()


@on_one_loop
async def test_credentials_that_are_refused(s3, name):
    async with pool() as request:
        def bucket(credentials):
            return Bucket(request, name, credentials, 'us-east-1', endpoint=s3.url)

        async def unknown():
            return 'UNKNOWN', 'secret', ()

        async def wrong():
            return s3.access_key_id, 'wrong', ()

        again = Wrong(s3, ('UNKNOWN', 'secret'))
        await bucket(again).put('key', b'content')
        if s3.name == 'moto':
            assert (again.forgotten, differs(s3, 'signatures')) == (0, True)
            return
        assert again.forgotten == 1
        error = await raises(S3CredentialsRefused, bucket(unknown).get('key'))
        assert (error.status, error.code) == (b'403', 'InvalidAccessKeyId')
        if not differs(s3, 'signatures'):
            error = await raises(S3Error, bucket(wrong).get('key'))
            assert (error.status, error.code) == (b'403', 'SignatureDoesNotMatch')


@on_one_loop
async def test_versions(s3, boto):
    with boto() as client:
        make_bucket(client, 'versioned')
        with contextlib.suppress(botocore.exceptions.ClientError):
            client.put_bucket_versioning(
                Bucket='versioned', VersioningConfiguration={'Status': 'Enabled'})
    async with bucket_of(s3, 'versioned') as bucket:
        old, new = [(await bucket.put('key', content)).version for content in (b'old', b'new')]
        if differs(s3, 'versions'):
            assert (old, new) == ('', '')
            return
        for version, content in ((old, b'old'), (new, b'new')):
            got = await bucket.get('key', version=version)
            assert (got.info.version, await got.read()) == (version, content)
            assert (await bucket.head('key', version=version)).version == version
            chunks = []
            await bucket.download('key', chunks.append, version=version)
            assert b''.join(chunks) == content
        await bucket.copy('key', 'copy', version=old)
        assert await (await bucket.get('copy')).read() == b'old'
        await bucket.delete('key')
        await raises(S3NotFound, bucket.get('key'))
        assert await (await bucket.get('key', version=old)).read() == b'old'
        await bucket.delete('key', version=old)
        await raises(S3NotFound, bucket.get('key', version=old))


def test_each_difference_is_looked_at():
    source = pathlib.Path(__file__).read_text(encoding='utf-8')
    asked = set(re.findall(r"differs\(s3, '(.*?)'\)", source))
    assert asked == {what for _, what in DIFFERENCES}
