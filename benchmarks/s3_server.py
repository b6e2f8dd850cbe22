"""The servers that s3.py measures against, on loopback: rclone's, and a canned one.

rclone's is a real server of S3's protocol, which checks signatures and keeps what it is sent. The
canned one checks nothing and keeps nothing, so that it is never what a client waits for: it knows
the length of an object by the last part of its key, and lists the same 100,000 keys. Both are
plain and over TLS. It needs trustme for a certificate.
"""
import asyncio
import contextlib
import json
import re
import ssl
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

BUCKET, KEY_ID, SECRET, REGION = 'bucket', 'AKID', 'secret', 'us-east-1'
KIB, MIB, GIB = 2 ** 10, 2 ** 20, 2 ** 30
# The objects that there are, by their key. All others have 1 KiB.
SIZES = {'1k': KIB, '1m': MIB, '64m': 64 * MIB, '1g': GIB}
# How many keys are listed with a prefix, 1,000 with each page.
PREFIXES = {100_000: 'data', 2_000: 'data/2026/11/end'}
PAGE = 1_000
CHUNK = bytes(256 * KIB)


# The canned server, which runs in a process of its own until its stdin closes
# ----------------------------------------------------------------------------

# The fields that S3 itself answers with.
FIELDS = (
    b'x-amz-id-2: 3qYxDxkC0vPbDl5cEZyLbpPVmbJ7m2gH1wkYl5rLcbH0gW0vJzXrJYoPu4Vx7w2oIYQ2bqJfQnM=\r\n'
    b'x-amz-request-id: 4X8G7S2QKZB1C9RD\r\ndate: Sun, 01 Nov 2026 12:00:00 GMT\r\n'
    b'server: AmazonS3\r\n')
OBJECT_FIELDS = (
    FIELDS + b'last-modified: Sun, 01 Nov 2026 11:00:00 GMT\r\n'
    b'etag: "9b2cf535f27731c974343645a3985328"\r\nx-amz-server-side-encryption: AES256\r\n'
    b'accept-ranges: bytes\r\ncontent-type: application/octet-stream\r\n')
LENGTH = re.compile(rb'\r\ncontent-length: *([0-9]+)', re.IGNORECASE)
RANGE = re.compile(rb'\r\nrange: *bytes=([0-9]+)-([0-9]*)', re.IGNORECASE)
CHUNKED = re.compile(rb'\r\ntransfer-encoding: *chunked', re.IGNORECASE)
EXPECT = re.compile(rb'\r\nexpect: *100-continue', re.IGNORECASE)
PAGES = max(PREFIXES) // PAGE
TOKEN = re.compile(rb'[?&]continuation-token=([0-9]+)')
PREFIX = re.compile(rb'[?&]prefix=([^&]*)')
END = b'\r\n0\r\n\r\n'


def whole(fields, content, status=b'200 OK'):
    return (b'HTTP/1.1 %b\r\n%bcontent-length: %d\r\n\r\n'
            % (status, fields, len(content)) + content)


def xml(root, content):
    return whole(FIELDS + b'content-type: application/xml\r\n', (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<{root} '
        f'xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{content}</{root}>').encode())


SMALL = whole(OBJECT_FIELDS, bytes(KIB))
WRITTEN = whole(FIELDS + b'etag: "9b2cf535f27731c974343645a3985328"\r\n', b'')
CREATED = xml('InitiateMultipartUploadResult', f'<Bucket>{BUCKET}</Bucket><Key>a</Key>'
              '<UploadId>VXBsb2FkIElEIGZvciBlbHZpbmcncyBteS1tb3ZpZS5tMnRzIHVwbG9hZA</UploadId>')
COMPLETED = xml('CompleteMultipartUploadResult', f'<Bucket>{BUCKET}</Bucket><Key>a</Key>'
                '<ETag>&quot;9b2cf535f27731c974343645a3985328-8&quot;</ETag>')


def listing(page, end, encoding=''):
    """A page of the listing. Its token is the number of the next one."""
    last = page + 1 == end
    directory = f'{page:03}' if page < end - min(PREFIXES) // PAGE else 'end'
    return xml('ListBucketResult', (
        f'<Name>{BUCKET}</Name><Prefix></Prefix>{encoding}'
        + f'<ContinuationToken>{page}</ContinuationToken>' * (page > 0)
        + f'<NextContinuationToken>{page + 1}</NextContinuationToken>' * (not last)
        + f'<KeyCount>{PAGE}</KeyCount><MaxKeys>{PAGE}</MaxKeys>'
        f'<IsTruncated>{str(not last).lower()}</IsTruncated>'
        + ''.join(
            f'<Contents><Key>data/2026/11/{directory}/part-{number:06}.parquet</Key>'
            '<LastModified>2026-11-01T11:00:00.000Z</LastModified>'
            '<ETag>&quot;9b2cf535f27731c974343645a3985328&quot;</ETag>'
            f'<Size>{number + KIB}</Size><StorageClass>STANDARD</StorageClass></Contents>'
            for number in range(page * PAGE, (page + 1) * PAGE))))


def first_page(target):
    """The number of the page that is asked for. Those with the longer prefix are the last ones."""
    if token := TOKEN.search(target):
        return int(token[1])
    prefix = unquote(PREFIX.search(target)[1].decode())
    return PAGES - next(number for number, known in PREFIXES.items()
                        if prefix.rstrip('/') == known) // PAGE


class Canned(asyncio.Protocol):
    """Answers as S3 does, but looks at nothing that it need not know."""

    accepted = 0
    pages = encoded_pages = ()

    def connection_made(self, transport):
        self.transport = transport
        self.head = self.target = b''
        # The bytes of a request's content that have not come; None if it is chunked.
        self.left = 0
        self.tail = b''
        self.can_write = asyncio.Event()
        self.can_write.set()
        Canned.accepted += 1

    def connection_lost(self, _):
        self.can_write.set()

    def pause_writing(self):
        self.can_write.clear()

    def resume_writing(self):
        self.can_write.set()

    def data_received(self, data):
        # No client sends a request before it has the response to the one before.
        if not self.target:
            self.head += data
            head, end, data = self.head.partition(b'\r\n\r\n')
            if not end:
                return
            self.begin(head)
        if self.left is None:
            self.tail = (self.tail + data)[-len(END):]
            is_over = self.tail == END
        else:
            self.left -= len(data)
            is_over = self.left <= 0
        if is_over:
            head, target, self.head, self.target = self.head, self.target, b'', b''
            self.answer(head.partition(b' ')[0], target, head)

    def begin(self, head):
        self.head, self.tail = head, b''
        self.target = head.split(b' ', 2)[1]
        length = LENGTH.search(head)
        self.left = int(length[1]) if length else None if CHUNKED.search(head) else 0
        if EXPECT.search(head):
            self.transport.write(b'HTTP/1.1 100 Continue\r\n\r\n')

    def answer(self, method, target, head):
        if method == b'PUT':
            self.transport.write(WRITTEN)
        elif method == b'POST':
            self.transport.write(COMPLETED if b'uploadId=' in target else CREATED)
        elif b'list-type=2' in target:
            pages = self.encoded_pages if b'encoding-type=url' in target else self.pages
            self.transport.write(pages[first_page(target)])
        elif target == b'/accepted':
            self.transport.write(whole(b'', b'%d' % Canned.accepted))
        else:
            size = SIZES.get(target.partition(b'?')[0].rpartition(b'/')[2].decode(), KIB)
            self.send_object(method, size, RANGE.search(head))

    def send_object(self, method, size, asked):
        if size == KIB and not asked and method == b'GET':
            self.transport.write(SMALL)
            return
        start, stop, status, fields = 0, size, b'200 OK', OBJECT_FIELDS
        if asked:
            start, stop = int(asked[1]), min(size, int(asked[2] or size) + 1)
            status = b'206 Partial Content'
            fields += b'content-range: bytes %d-%d/%d\r\n' % (start, stop - 1, size)
        self.transport.write(b'HTTP/1.1 %b\r\n%bcontent-length: %d\r\n\r\n'
                             % (status, fields, stop - start))
        if method == b'GET':
            self.sending = asyncio.create_task(self.send(stop - start))

    async def send(self, size):
        chunk = memoryview(CHUNK)
        while size and not self.transport.is_closing():
            await self.can_write.wait()
            self.transport.write(chunk[:size])
            size -= min(size, len(chunk))


async def serve(certificate):
    loop = asyncio.get_running_loop()
    Canned.pages = [listing(page, PAGES) for page in range(PAGES)]
    Canned.encoded_pages = [listing(page, PAGES, '<EncodingType>url</EncodingType>')
                            for page in range(PAGES)]
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    urls = {}
    for scheme, option in (('http', None), ('https', context)):
        server = await loop.create_server(Canned, '127.0.0.1', 0, ssl=option)
        urls[scheme] = f'{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}'
    print(json.dumps(urls), flush=True)
    is_over = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), is_over.set)
    await is_over.wait()


# Both
# ----

def make_certificate(root):
    import trustme
    ca = trustme.CA()
    ca.cert_pem.write_to_path(root / 'ca.pem')
    ca.issue_cert('127.0.0.1', 'localhost').private_key_and_cert_chain_pem.write_to_path(
        root / 'server.pem')


@contextlib.contextmanager
def canned(root):
    """Yield the URLs of the canned server, as `{'http': …, 'https': …}`."""
    with subprocess.Popen((sys.executable, Path(__file__).resolve(), root / 'server.pem'),
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield json.loads(process.stdout.readline())
        process.stdin.close()


@contextlib.contextmanager
def rclone(root):
    """Yield the URLs of rclone, as `{'http': …, 'https': …}`. Its bucket is a folder below it."""
    certificate = str(root / 'server.pem')
    with contextlib.ExitStack() as stack:
        yield {
            'http': stack.enter_context(rclone_serving(root)),
            'https': stack.enter_context(
                rclone_serving(root, '--cert', certificate, '--key', certificate))}


@contextlib.contextmanager
def rclone_serving(root, *options):
    program = Path(sys.executable).with_name('rclone')
    with subprocess.Popen(
            (program, 'serve', 's3', '--addr', '127.0.0.1:0', '--auth-key', f'{KEY_ID},{SECRET}',
             '--config', '', *options, root / 'served'),
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            log = ''
            for line in process.stderr:
                log += line
                if match := re.search(r'Starting s3 server on \[(https?://.*)/\]', line):
                    break
            else:
                raise SystemExit(f'rclone does not run: {log}')
            yield match[1]
        finally:
            process.kill()
            process.stderr.read()


def fill(root):
    """Make the objects that rclone serves."""
    bucket = root / 'served' / BUCKET
    bucket.mkdir(parents=True)
    for key, size in SIZES.items():
        with open(bucket / key, 'wb') as file:
            file.truncate(size)


if __name__ == '__main__':
    asyncio.run(serve(sys.argv[1]))
