"""The clients of S3 that s3.py measures, and one measurement, in a process of its own.

Each client does the same with what it offers for it. Nothing is tuned but what would not be alike
otherwise: parts and ranges of 8 MiB, 4 at once; as many connections as there are requests at once.
What is slower, but what a client does by default, is left to it: checksums, signed payloads,
"expect: 100-continue". `boto3` is blocking, so its calls are made in threads.
"""
import asyncio
import contextlib
import gc
import io
import json
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from s3_server import BUCKET, KEY_ID, KIB, MIB, PREFIXES, REGION, SECRET, SIZES

ROOT = Path(__file__).resolve().parents[1]
PART, PARALLEL = 8 * MIB, 4
CHUNK = 64 * KIB


class Failed(Exception):
    """A client did not do what it should."""


def check(is_right, found):
    if not is_right:
        raise Failed(f'this was not expected: {found}')


def ranges(size):
    return [(start, min(size, start + PART)) for start in range(0, size, PART)]


def import_from_root():
    """Let lowhaio and its layers be imported from this checkout."""
    sys.path[:0] = map(str, (ROOT, *(ROOT / 'layers').glob('*/')))


async def at_once(number, make, indices):
    """Await `make(index)` for each index, so many at once."""
    indices = iter(indices)

    async def work():
        for index in indices:
            await make(index)

    await asyncio.gather(*(work() for _ in range(number)))


def in_threads(number, call, indices):
    """The same with a function that blocks."""
    indices = iter(indices)

    def work():
        for index in indices:
            call(index)

    with ThreadPoolExecutor(number) as executor:
        for future in [executor.submit(work) for _ in range(number)]:
            future.result()


async def chunks_of(size):
    """A stream of so many bytes in chunks of 64 KiB, whose length nothing tells.

    Each chunk is a new one, so that it takes memory as long as a client holds it.
    """
    for _ in range(size // CHUNK):
        yield bytes(CHUNK)


class Unseekable(io.RawIOBase):
    """The same as a file that can only be read."""

    def __init__(self, size):
        self.left = size

    def readable(self):
        return True

    def readinto(self, buffer):
        size = min(len(buffer), self.left, CHUNK)
        buffer[:size] = bytes(size)
        self.left -= size
        return size


# The clients. Each is made with a Setup, in a context, and has those of these functions that it
# can offer; they are coroutine functions, unless it blocks:
#
# get(key)                    reads an object of a few KiB or MiB, and returns its bytes
# put(key, data)              writes one from bytes
# put_file(key, path)         writes one from a file, in parts if it is large
# put_stream(key, size)       writes one of an unknown length
# stream(key)                 reads all of a large object in chunks, and returns their length
# download(key, path, size)   reads one into a file, in ranges that come at the same time
# fetch(key, size)            reads one in ranges that come at the same time, and drops them
# list(prefix)                lists the bucket, and returns the number of keys
# ----------------------------------------------------------------------------------------------

@dataclass
class Setup:
    url: str
    ca: str
    is_unsigned: bool
    is_blocking = False

    @property
    def is_tls(self):
        return self.url.startswith('https:')


@contextlib.asynccontextmanager
async def floor(setup):
    """What any asyncio client needs: the same bytes over sockets, nothing signed and parsed."""
    import socket
    loop = asyncio.get_running_loop()
    host, port = setup.url.partition('://')[2].split(':')
    idle = []

    async def ask(head, size, data=b''):
        sock = idle.pop() if idle else socket.create_connection((host, int(port)))
        sock.setblocking(False)
        await loop.sock_sendall(sock, head)
        if data:
            await loop.sock_sendall(sock, data)
        came = await loop.sock_recv(sock, 120 * KIB)
        left = size - len(came.partition(b'\r\n\r\n')[2])
        while left > 0:
            left -= len(await loop.sock_recv(sock, 120 * KIB))
        idle.append(sock)
        return bytes(size)

    class Client:
        async def get(self, key):
            return await ask(HEAD % (b'GET', key.encode(), 0), SIZES[key])

        async def put(self, key, data):
            await ask(HEAD % (b'PUT', key.encode(), len(data)), 0, data)

    yield Client()


# As many bytes as the other clients send.
HEAD = (b'%b /bucket/%b HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: %d\r\nauthorization: '
        + 200 * b'-' + b'\r\nx-amz-date: 20261101T120000Z\r\n\r\n')


@contextlib.asynccontextmanager
async def lowhaio(setup):
    """lowhaio and its layer that signs. Parts and ranges are made by hand."""
    import_from_root()
    import ssl
    from lowhaio import Pool, buffered, streamed
    from lowhaio_aws_sigv4 import object_url, signed

    async def credentials():
        return KEY_ID, SECRET, ()

    request, close = Pool(get_ssl_context=lambda: ssl.create_default_context(cafile=setup.ca))
    request = signed(request, credentials, 's3', REGION, body_hash='UNSIGNED-PAYLOAD'
                     if setup.is_unsigned or setup.is_tls else None)
    url = f'{setup.url}/{BUCKET}'

    async def ask(method, key, expected=b'200', **options):
        code, headers, body = await request(method, object_url(url, key), **options)
        if code != expected:
            raise Failed(f'{code}: {await buffered(body)}')
        return headers, body

    class Client:
        async def get(self, key):
            _, body = await ask(b'GET', key)
            return await buffered(body)

        async def put(self, key, data):
            _, body = await ask(b'PUT', key, body=streamed(data))
            await buffered(body)

        async def put_file(self, key, path):
            size = path.stat().st_size
            if size <= 2 * PART:
                await self.put(key, path.read_bytes())
                return
            _, body = await ask(b'POST', key, params=(('uploads', ''),))
            upload = re.search(b'<UploadId>(.*)</UploadId>', await buffered(body))[1].decode()
            etags = {}
            with open(path, 'rb') as file:
                async def put(part):
                    number, (start, stop) = part
                    data = os.pread(file.fileno(), stop - start, start)
                    headers, body = await ask(b'PUT', key, body=streamed(data), params=(
                        ('partNumber', str(number)), ('uploadId', upload)))
                    await buffered(body)
                    etags[number] = dict(headers)[b'etag'].decode()

                await at_once(PARALLEL, put, enumerate(ranges(size), 1))
            parts = ''.join(f'<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>'
                            for number, etag in sorted(etags.items()))
            _, body = await ask(
                b'POST', key, params=(('uploadId', upload),), body=streamed(
                    f'<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>'.encode()))
            await buffered(body)

        async def stream(self, key):
            _, body = await ask(b'GET', key)
            return await counted(body)

        async def download(self, key, path, size):
            if size <= PART:
                path.write_bytes(await self.get(key))
                return
            with open(path, 'wb') as file:
                async def get(part):
                    start, stop = part
                    _, body = await ask(b'GET', key, b'206', headers=(
                        (b'range', b'bytes=%d-%d' % (start, stop - 1)),))
                    async for data in body:
                        start += os.pwrite(file.fileno(), data, start)

                await at_once(PARALLEL, get, ranges(size))

        async def list(self, prefix):
            from xml.etree.ElementTree import fromstring
            params, more, count = (('list-type', '2'), ('prefix', prefix)), (), 0
            while True:
                _, _, body = await request(b'GET', url, params=params + more)
                root = fromstring(await buffered(body))
                space = root.tag.partition('}')[0] + '}'
                count += len([(
                    found.findtext(f'{space}Key'), int(found.findtext(f'{space}Size')),
                    found.findtext(f'{space}LastModified'), found.findtext(f'{space}ETag'))
                    for found in root.iterfind(f'{space}Contents')])
                token = root.findtext(f'{space}NextContinuationToken')
                if not token:
                    return count
                more = (('continuation-token', token),)

    yield Client()
    await close()


async def counted(chunks):
    count = 0
    async for data in chunks:
        count += len(data)
    return count


@contextlib.asynccontextmanager
async def lowhaio_s3(setup):
    import_from_root()
    import ssl
    from lowhaio import Pool
    from lowhaio_s3 import Bucket

    async def credentials():
        return KEY_ID, SECRET, ()

    request, close = Pool(get_ssl_context=lambda: ssl.create_default_context(cafile=setup.ca))
    bucket = Bucket(request, BUCKET, credentials, REGION, endpoint=setup.url,
                    signed_payload=False if setup.is_unsigned else None)

    class Client:
        async def get(self, key):
            return await (await bucket.get(key)).read()

        async def put(self, key, data):
            await bucket.put(key, data)

        async def put_file(self, key, path):
            await bucket.put(key, path)

        async def put_stream(self, key, size):
            await bucket.put(key, chunks_of(size))

        async def stream(self, key):
            return await counted(await bucket.get(key))

        async def download(self, key, path, size):
            await bucket.download(key, path)

        async def fetch(self, key, size):
            count = []
            await bucket.download(key, lambda chunk: count.append(len(chunk)))
            check(sum(count) == size, f'{sum(count)} bytes')

        async def list(self, prefix):
            return sum([len(page.objects) async for page in bucket.list(prefix)])

    yield Client()
    await close()


@contextlib.asynccontextmanager
async def obstore(setup):
    import obstore
    from obstore.store import S3Store
    # It takes `https` for the default, but a certificate only as an option of its HTTP client.
    options = {'root_certificate': Path(setup.ca).read_bytes()} if setup.is_tls else {
        'allow_http': True}
    store = S3Store(BUCKET, endpoint=setup.url, access_key_id=KEY_ID, secret_access_key=SECRET,
                    region=REGION, unsigned_payload=setup.is_unsigned, client_options=options)
    parts = {'chunk_size': PART, 'max_concurrency': PARALLEL}

    class Client:
        async def get(self, key):
            return await (await obstore.get_async(store, key)).bytes_async()

        async def put(self, key, data):
            await obstore.put_async(store, key, data, **parts)

        async def put_file(self, key, path):
            await obstore.put_async(store, key, path, **parts)

        async def put_stream(self, key, size):
            await obstore.put_async(store, key, chunks_of(size), **parts)

        async def stream(self, key):
            return await counted((await obstore.get_async(store, key)).stream())

        async def download(self, key, path, size):
            if size <= PART:
                path.write_bytes(await self.get(key))
                return
            with open(path, 'wb') as file:
                async def get(part):
                    start, stop = part
                    data = await obstore.get_range_async(store, key, start=start, end=stop)
                    os.pwrite(file.fileno(), data, start)

                await at_once(PARALLEL, get, ranges(size))

        async def fetch(self, key, size):
            count = []

            async def get(part):
                start, stop = part
                count.append(len(await obstore.get_range_async(
                    store, key, start=start, end=stop)))

            await at_once(PARALLEL, get, ranges(size))
            check(sum(count) == size, f'{sum(count)} bytes')

        async def list(self, prefix):
            count = 0
            async for objects in obstore.list(store, prefix, chunk_size=1000):
                count += len(objects)
            return count

    yield Client()


def without_awscrt():
    """Let botocore not find awscrt, as where it is not installed."""
    sys.modules['awscrt'] = None


def botocore_options(setup):
    return {'service_name': 's3', 'endpoint_url': setup.url, 'region_name': REGION,
            'aws_access_key_id': KEY_ID, 'aws_secret_access_key': SECRET, 'verify': setup.ca}


@contextlib.asynccontextmanager
async def aiobotocore(setup):
    without_awscrt()
    from aiobotocore.config import AioConfig
    from aiobotocore.session import get_session
    config = AioConfig(max_pool_connections=100)
    async with get_session().create_client(**botocore_options(setup), config=config) as s3:
        class Client:
            async def get(self, key, **options):
                response = await s3.get_object(Bucket=BUCKET, Key=key, **options)
                return await response['Body'].read()

            async def put(self, key, data):
                await s3.put_object(Bucket=BUCKET, Key=key, Body=data)

            async def put_file(self, key, path):
                size = path.stat().st_size
                if size <= 2 * PART:
                    await self.put(key, path.read_bytes())
                    return
                with open(path, 'rb') as file:
                    await self.put_parts(key, (
                        (number, os.pread(file.fileno(), stop - start, start))
                        for number, (start, stop) in enumerate(ranges(size), 1)))

            async def put_parts(self, key, parts):
                upload = {'Bucket': BUCKET, 'Key': key, 'UploadId': (
                    await s3.create_multipart_upload(Bucket=BUCKET, Key=key))['UploadId']}
                done = []

                async def put(part):
                    number, data = part
                    response = await s3.upload_part(**upload, PartNumber=number, Body=data)
                    done.append({'PartNumber': number, 'ETag': response['ETag']})

                await at_once(PARALLEL, put, parts)
                done.sort(key=lambda part: part['PartNumber'])
                await s3.complete_multipart_upload(**upload, MultipartUpload={'Parts': done})

            async def put_stream(self, key, size):
                file = io.BufferedReader(Unseekable(size))
                await self.put_parts(key, enumerate(iter(lambda: file.read(PART), b''), 1))

            async def stream(self, key):
                response = await s3.get_object(Bucket=BUCKET, Key=key)
                return await counted(response['Body'].iter_chunks(CHUNK))

            async def download(self, key, path, size):
                if size <= PART:
                    path.write_bytes(await self.get(key))
                    return
                with open(path, 'wb') as file:
                    async def get(part):
                        start, stop = part
                        data = await self.get(key, Range=f'bytes={start}-{stop - 1}')
                        os.pwrite(file.fileno(), data, start)

                    await at_once(PARALLEL, get, ranges(size))

            async def fetch(self, key, size):
                count = []

                async def get(part):
                    start, stop = part
                    count.append(len(await self.get(key, Range=f'bytes={start}-{stop - 1}')))

                await at_once(PARALLEL, get, ranges(size))
                check(sum(count) == size, f'{sum(count)} bytes')

            async def list(self, prefix):
                pages = s3.get_paginator('list_objects_v2').paginate(
                    Bucket=BUCKET, Prefix=prefix)
                return sum([len(page['Contents']) async for page in pages])

        yield Client()


@contextlib.asynccontextmanager
async def boto3(setup, with_awscrt=False):
    if not with_awscrt:
        without_awscrt()
    import boto3 as sdk
    from boto3.s3.transfer import TransferConfig
    from botocore.config import Config
    s3 = sdk.client(**botocore_options(setup), config=Config(max_pool_connections=100))
    config = TransferConfig(
        multipart_threshold=2 * PART, multipart_chunksize=PART, max_concurrency=PARALLEL,
        preferred_transfer_client='classic')

    class Client:
        is_blocking = True

        def get(self, key):
            return s3.get_object(Bucket=BUCKET, Key=key)['Body'].read()

        def put(self, key, data):
            s3.put_object(Bucket=BUCKET, Key=key, Body=data)

        def put_file(self, key, path):
            if path.stat().st_size <= 2 * PART:
                self.put(key, path.read_bytes())
            else:
                s3.upload_file(str(path), BUCKET, key, Config=config)

        def put_stream(self, key, size):
            s3.upload_fileobj(io.BufferedReader(Unseekable(size)), BUCKET, key, Config=config)

        def stream(self, key):
            chunks = s3.get_object(Bucket=BUCKET, Key=key)['Body'].iter_chunks(CHUNK)
            return sum(map(len, chunks))

        def download(self, key, path, size):
            if size <= PART:
                path.write_bytes(self.get(key))
            else:
                s3.download_file(BUCKET, key, str(path), Config=config)

        def list(self, prefix):
            pages = s3.get_paginator('list_objects_v2').paginate(
                    Bucket=BUCKET, Prefix=prefix)
            return sum(len(page['Contents']) for page in pages)

    yield Client()


def boto3_crt(setup):
    """boto3 where awscrt is installed, which then computes the checksums.

    That awscrt moves the files, too, can not be measured here: it knows no endpoint but AWS's.
    """
    return boto3(setup, with_awscrt=True)


@contextlib.asynccontextmanager
async def miniopy(setup):
    if setup.is_tls:
        os.environ['SSL_CERT_FILE'] = setup.ca
    from miniopy_async import Minio
    client = Minio(setup.url.partition('://')[2], KEY_ID, SECRET, secure=setup.is_tls,
                   region=REGION)
    parts = {'part_size': PART, 'num_parallel_uploads': PARALLEL}

    class Client:
        async def get(self, key, **options):
            response = await client.get_object(BUCKET, key, **options)
            try:
                return await response.read()
            finally:
                response.release()

        async def put(self, key, data):
            await client.put_object(BUCKET, key, io.BytesIO(data), len(data))

        async def put_file(self, key, path):
            size = path.stat().st_size
            if size <= 2 * PART:
                await self.put(key, path.read_bytes())
            else:
                await client.fput_object(BUCKET, key, str(path), **parts)

        async def put_stream(self, key, size):
            await client.put_object(BUCKET, key, Unseekable(size), -1, **parts)

        async def stream(self, key):
            response = await client.get_object(BUCKET, key)
            try:
                return await counted(response.content.iter_chunked(CHUNK))
            finally:
                response.release()

        async def download(self, key, path, size):
            if size <= PART:
                path.write_bytes(await self.get(key))
                return
            with open(path, 'wb') as file:
                async def get(part):
                    start, stop = part
                    data = await self.get(key, offset=start, length=stop - start)
                    os.pwrite(file.fileno(), data, start)

                await at_once(PARALLEL, get, ranges(size))

        async def list(self, prefix):
            return await counted_objects(client.list_objects(
                BUCKET, prefix, recursive=True))

    yield Client()
    await client.close_session()


async def counted_objects(objects):
    count = 0
    async for _ in objects:
        count += 1
    return count


CLIENTS = {
    'floor': floor, 'lowhaio': lowhaio, 'lowhaio_s3': lowhaio_s3, 'obstore': obstore,
    'aiobotocore': aiobotocore, 'boto3': boto3, 'boto3-crt': boto3_crt, 'miniopy-async': miniopy}


# What is measured. Each function takes a client and a Job, and does what it says so often.
# -------------------------------------------------------------------------------------------

@dataclass
class Job:
    requests: int
    concurrency: int
    size: int
    folder: Path

    def new_folder(self):
        return Path(tempfile.mkdtemp(dir=self.folder / 'downloaded'))


async def calls(client, job, call):
    if getattr(client, 'is_blocking', False):
        in_threads(job.concurrency, call, range(job.requests))
    else:
        await at_once(job.concurrency, call, range(job.requests))


def finished(result, verify):
    """Check the result of a function that blocks, or of one that is awaited."""
    if not hasattr(result, '__await__'):
        return verify(result)

    async def wait():
        verify(await result)

    return wait()


async def get(client, job):
    key = KEYS[job.size]
    await calls(client, job, lambda _: finished(
        client.get(key), lambda data: check(len(data) == job.size, f'{len(data)} bytes')))


KEYS = {size: key for key, size in SIZES.items()}


async def put(client, job):
    data = os.urandom(job.size)
    await calls(client, job, lambda index: client.put(f'put-{index % job.concurrency}', data))


async def put_file(client, job):
    await calls(client, job, lambda index: client.put_file(
        f'put-{job.size}', job.folder / f'local-{job.size}'))


async def put_stream(client, job):
    await calls(client, job, lambda index: client.put_stream(f'put-{job.size}', job.size))


async def stream(client, job):
    key = KEYS[job.size]
    await calls(client, job, lambda _: finished(
        client.stream(key), lambda count: check(count == job.size, f'{count} bytes')))


async def download(client, job):
    # Each to a new file: where a file takes the place of another one, ext4 writes it to the disk.
    folder = job.new_folder()
    paths = [folder / str(index) for index in range(job.requests)]
    await calls(client, job, lambda index: client.download(
        KEYS[job.size], paths[index], job.size))
    check(all(path.stat().st_size == job.size for path in paths), 'files of another length')


async def fetch(client, job):
    await calls(client, job, lambda _: client.fetch(KEYS[job.size], job.size))


async def list_keys(client, job):
    prefix = PREFIXES[job.size]
    await calls(client, job, lambda _: finished(
        client.list(prefix), lambda count: check(count == job.size, f'{count} keys')))


async def tree_up(client, job):
    await calls(client, job, lambda index: client.put_file(
        f'up/{index // 100:03}/{index % 100:02}', job.folder / tree_path(index)))


async def tree_down(client, job):
    target = job.new_folder()
    for directory in range((job.requests + 99) // 100):
        (target / f'tree/{directory:03}').mkdir(parents=True)
    await calls(client, job, lambda index: client.download(
        tree_path(index), target / tree_path(index), job.size))


def tree_path(index):
    return f'tree/{index // 100:03}/{index % 100:02}'


def memory(field):
    """The memory of this process in bytes."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(field + ':'):
            return int(line.split()[1]) * KIB
    raise Failed(f'the system does not tell {field}')


FUNCTIONS = {
    function.__name__: function
    for function in (get, put, put_file, put_stream, stream, download, fetch, list_keys, tree_up,
                     tree_down)}


async def measure(asked):
    """The CPU and wall time, in seconds, and the peak of memory in bytes."""
    setup = Setup(asked['url'], asked['ca'], asked['is_unsigned'])
    job = Job(asked['requests'], asked['concurrency'], asked['size'], Path(asked['folder']))
    function = FUNCTIONS[asked['function']]
    async with CLIENTS[asked['client']](setup) as client:
        if asked['warm_up']:
            await function(client, Job(
                asked['warm_up'], job.concurrency, job.size, job.folder))
        gc.collect()
        wall, cpu = time.perf_counter(), time.process_time()
        await function(client, job)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        print(json.dumps({'cpu': cpu, 'wall': wall, 'peak': memory('VmHWM')}), flush=True)
        # The process ends without unloading anything, since some clients crash then.
        os._exit(0)


def main():
    asked = json.loads(sys.argv[1])
    if asked['is_uvloop']:
        import uvloop
        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    else:
        runner = asyncio.Runner()
    with runner:
        runner.run(measure(asked))


if __name__ == '__main__':
    main()
