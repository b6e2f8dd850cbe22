"""What each server of S3's protocol does: the source of the tables of docs/peers/s3.md.

Each row of a table is a function here, which asks a server and returns what the page says of it.
`python -m tests.outside.test_s3_servers` asks all servers and writes the tables anew. radosgw is
asked with LOWHAIO_TEST_RADOSGW=1. Without it, its column stays as it is.

The requests are signed by botocore, so that what is seen is the server's doing.
"""

import asyncio
import base64
import contextlib
import datetime
import functools
import hashlib
import itertools
import pathlib
import re
import socket
import sys
import tempfile
import urllib.parse
from typing import NamedTuple
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import pytest
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from lowhaio import HttpError, Pool, buffered, streamed
from tests.harness import on_one_loop

sys.path.append(str(pathlib.Path(__file__).parent))

from s3_servers import NAMES, starting  # noqa: E402

PAGE = pathlib.Path(__file__).parents[2] / 'docs' / 'peers' / 's3.md'
MIB = 2 ** 20

# ------------------------------------------------------------------------------------- asking one


class Signing(S3SigV4Auth):
    """Signs with this in place of the hash of the content."""

    def __init__(self, credentials, content_hash):
        super().__init__(credentials, 's3', 'us-east-1')
        self.content_hash = content_hash

    def payload(self, request):
        return self.content_hash


class Answer(NamedTuple):
    code: int
    fields: dict
    content: bytes

    def __str__(self):
        """Such as `404 NoSuchKey`."""
        told = self.find('Code') if self.code >= 300 and self.content.startswith(b'<') else ''
        return f'{self.code} {told}'.strip()

    def find(self, name):
        """The text of the first element with this name, or `''`."""
        return next(iter(self.find_all(name)), '')

    def find_all(self, name):
        try:
            root = ElementTree.fromstring(self.content.strip())
        except ElementTree.ParseError:
            return []
        return [element.text or '' for element in root.iter() if element.tag.endswith(name)
                and element.tag.removesuffix(name)[-1:] in ('', '}')]

    @property
    def is_fine(self):
        return 200 <= self.code < 300


class Asker:
    """Makes requests for the objects of one bucket of one server."""

    def __init__(self, server, request, bucket):
        self.server = server
        self.request = request
        self.bucket = bucket
        self.credentials = Credentials(server.access_key_id, server.secret_access_key)

    def url(self, key='', query=(), bucket=None):
        base = f'{self.server.url}/{bucket or self.bucket}'
        query = '&'.join(f'{quoted(name)}={quoted(value)}' for name, value in query)
        path = '/' + urllib.parse.quote(key, safe='/-._~') if key else ''
        return base + path + (f'?{query}' if query else '')

    def signed(self, method, url, headers=(), content_hash='UNSIGNED-PAYLOAD', auth=None):
        """A request of botocore, with its signature."""
        made = AWSRequest(method=method, url=url, headers=dict(headers))
        (auth or Signing(self.credentials, content_hash)).add_auth(made)
        return made

    async def __call__(self, method, key='', *, query=(), headers=(), content=None, bucket=None,
                       content_hash=None, auth=None):
        if content_hash is None:
            content_hash = hashlib.sha256(content or b'').hexdigest()
        made = self.signed(method, self.url(key, query, bucket), headers, content_hash, auth)
        return await self.send(method, made.url, made.headers.items(), content)

    async def send(self, method, url, headers=(), content=None):
        fields = tuple((as_bytes(name), as_bytes(value)) for name, value in headers)
        kwargs = {}
        if content is not None or method in ('PUT', 'POST'):
            content = content or b''
            fields += ((b'content-length', b'%d' % len(content)),)
            kwargs['body'] = streamed(content)
        code, fields, body = await self.request(method.encode(), url, headers=fields, **kwargs)
        fields = {name.decode(): value.decode('latin-1') for name, value in fields}
        return Answer(int(code), fields, await buffered(body))

    async def put(self, key, content=b'0123456789', **kwargs):
        """Without what is asked about, so that it has to work."""
        answer = await self('PUT', key, content=content, **kwargs)
        assert answer.is_fine, answer.content
        return answer

    async def listed(self, **query):
        answer = await self('GET', query=[
            ('encoding-type', 'url'), ('list-type', '2'), *query.items()])
        assert answer.is_fine, answer.content
        decode = urllib.parse.unquote_plus if answer.find('EncodingType') == 'url' else str
        return [decode(key) for key in answer.find_all('Key')]

    async def clear(self):
        for key in await self.listed():
            await self('DELETE', key)

    def raw(self, method, key, headers=(), content=b'', content_hash='UNSIGNED-PAYLOAD'):
        """The code of the first response to a request that is sent as it is, in bytes."""
        url = self.url(key)
        made = self.signed(method, url, headers, content_hash)
        parts = urllib.parse.urlsplit(url)
        lines = [f'{method} {parts.path} HTTP/1.1', f'host: {parts.netloc}',
                 *(f'{name}: {value}' for name, value in made.headers.items()), '', '']
        with socket.create_connection((parts.hostname, parts.port), 10) as sock:
            sock.sendall('\r\n'.join(lines).encode() + content)
            with sock.makefile('rb') as stream:
                line = stream.readline()
        return int(line.split()[1]) if line else None

    # multipart uploads

    async def begin(self, key, **kwargs):
        answer = await self('POST', key, query=[('uploads', '')], **kwargs)
        assert answer.is_fine, answer.content
        return answer.find('UploadId')

    async def part(self, key, upload, number, content=b'', **kwargs):
        answer = await self('PUT', key, content=content, query=[
            ('partNumber', str(number)), ('uploadId', upload)], **kwargs)
        assert answer.is_fine, answer.content
        return answer.fields.get('etag') or answer.find('ETag')

    async def complete(self, key, upload, etags, headers=()):
        parts = ''.join(f'<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>'
                        for number, etag in etags.items())
        return await self('POST', key, query=[('uploadId', upload)], headers=headers, content=(
            f'<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>').encode())

    async def abort(self, key, upload):
        return await self('DELETE', key, query=[('uploadId', upload)])


def as_bytes(text):
    return text if isinstance(text, bytes) else text.encode()


def quoted(text):
    return urllib.parse.quote(text, safe='-._~')


def code_span(text):
    return f'`{text}`' if '`' not in text else f'`` {text} ``'


def md5(content):
    return base64.b64encode(hashlib.md5(content).digest()).decode()


# --------------------------------------------------------------------------------------- the rows

# From the heading of a table to its rows: what the page says that is asked, and a function.
TABLES = {}


def rows(heading, *texts_and_args):
    """Register a function: once for each text, with these arguments."""
    def register(function):
        for text, *args in texts_and_args:
            TABLES.setdefault(heading, {})[text] = functools.partial(function, *args)
        return function

    return register


def row(heading, text):
    return rows(heading, (text,))


# -- ranges

RANGES = 'Ranges'


async def range_told(ask, key, headers=(), query=()):
    answer = await ask('GET', key, headers=headers, query=query)
    if not answer.is_fine:
        return str(answer)
    text = f'{answer.code} {code_span(answer.content.decode())}' if answer.content else (
        f'{answer.code}, no byte')
    has_field = 'content-range' in answer.fields
    return text + {206: '' if has_field else ', without `content-range`',
                   200: ', with `content-range`' if has_field else ''}[answer.code]


@rows(RANGES,
      ('`bytes=2-4`', 'bytes=2-4'),
      ('`bytes=0-0`', 'bytes=0-0'),
      ('`bytes=7-`', 'bytes=7-'),
      ('`bytes=-3`', 'bytes=-3'),
      ('`bytes=-100`', 'bytes=-100'),
      ('`bytes=8-100`', 'bytes=8-100'),
      ('`bytes=10-`, past the end', 'bytes=10-'),
      ('`bytes=5-2`', 'bytes=5-2'),
      ('`bytes=0-0,2-3`', 'bytes=0-0,2-3'))
async def ranges(value, ask):
    await ask.put('digits')
    return await range_told(ask, 'digits', {'range': value})


@rows(RANGES,
      ('`bytes=0-` of an empty object', 'bytes=0-'),
      ('`bytes=-1` of an empty object', 'bytes=-1'))
async def range_of_nothing(value, ask):
    await ask.put('nothing', b'')
    made = ask.signed('GET', ask.url('nothing'), {'range': value}, hashlib.sha256().hexdigest())
    code, fields, body = await ask.request(b'GET', made.url, headers=tuple(
        (name.encode(), as_bytes(field)) for name, field in made.headers.items()))
    await body.aclose()  # what s3rver promises would not come
    told = f'{code.decode()}, length {dict(fields)[b"content-length"].decode()}'
    return '416 InvalidRange' if code == b'416' else told


@row(RANGES, 'HEAD with `bytes=2-4`')
async def range_of_head(ask):
    await ask.put('digits')
    answer = await ask('HEAD', 'digits', headers={'range': 'bytes=2-4'})
    return f'{answer.code}, length {answer.fields.get("content-length", "none")}'


@rows(RANGES,
      ('`bytes=2-4` with `if-range`: the ETag', 'ETAG'),
      ('`bytes=2-4` with `if-range`: another ETag', '"0"'))
async def if_range(value, ask):
    etag = (await ask.put('digits')).fields['etag']
    return await range_told(ask, 'digits', {
        'range': 'bytes=2-4', 'if-range': value.replace('ETAG', etag)})


@row(RANGES, '`?partNumber=1` of an object that has no parts')
async def part_number(ask):
    await ask.put('digits')
    return await range_told(ask, 'digits', query=[('partNumber', '1')])


# -- conditions

CONDITIONS = 'Conditions'
LATER = 'Fri, 01 Jan 2100 00:00:00 GMT'
EARLIER = 'Sat, 01 Jan 2000 00:00:00 GMT'


@rows(CONDITIONS,
      ('GET, `if-match`: the ETag', 'if-match', 'ETAG'),
      ('GET, `if-match`: another ETag', 'if-match', '"0"'),
      ('GET, `if-none-match`: the ETag', 'if-none-match', 'ETAG'),
      ('GET, `if-none-match`: another ETag', 'if-none-match', '"0"'),
      ('GET, `if-modified-since`: later', 'if-modified-since', LATER),
      ('GET, `if-unmodified-since`: earlier', 'if-unmodified-since', EARLIER))
async def reading(name, value, ask):
    etag = (await ask.put('key')).fields['etag']
    return str(await ask('GET', 'key', headers={name: value.replace('ETAG', etag)}))


@row(CONDITIONS, 'GET with a range, `if-match`: another ETag')
async def reading_a_range(ask):
    await ask.put('key')
    return str(await ask('GET', 'key', headers={'range': 'bytes=2-4', 'if-match': '"0"'}))


@row(CONDITIONS, 'the 304 has the `etag`')
async def not_modified(ask):
    etag = (await ask.put('key')).fields['etag']
    answer = await ask('GET', 'key', headers={'if-none-match': etag})
    return 'no 304' if answer.code != 304 else 'yes' if 'etag' in answer.fields else 'no'


@rows(CONDITIONS,
      ('PUT, `if-none-match: *`, the key exists', 'if-none-match', '*'),
      ('PUT, `if-match`: the ETag', 'if-match', 'ETAG'),
      ('PUT, `if-match`: the ETag without its quotation marks', 'if-match', 'BARE'),
      ('PUT, `if-match`: another ETag', 'if-match', '"0"'))
async def writing(name, value, ask):
    etag = (await ask.put('key', b'old')).fields['etag']
    answer = await ask('PUT', 'key', content=b'new',
                       headers={name: value.replace('ETAG', etag).replace('BARE', etag[1:-1])})
    is_written = (await ask('GET', 'key')).content == b'new'
    assert is_written == answer.is_fine
    return f'{answer}, written' if is_written else str(answer)


@rows(CONDITIONS,
      ('PUT, `if-none-match: *`, the key is missing', 'if-none-match', '*'),
      ('PUT, `if-match`, the key is missing', 'if-match', '"0"'))
async def writing_anew(name, value, ask):
    await ask('DELETE', 'missing')
    answer = await ask('PUT', 'missing', content=b'new', headers={name: value})
    return f'{answer}, written' if answer.is_fine else str(answer)


@row(CONDITIONS, 'DELETE, `if-match`: another ETag')
async def deleting(ask):
    await ask.put('key')
    answer = await ask('DELETE', 'key', headers={'if-match': '"0"'})
    is_gone = (await ask('HEAD', 'key')).code == 404
    return f'{answer}, deleted' if is_gone else str(answer)


@row(CONDITIONS, 'a copy, `x-amz-copy-source-if-match`: another ETag')
async def copying_if(ask):
    await ask.put('key')
    answer = await ask('PUT', 'copy', headers={
        'x-amz-copy-source': f'/{ask.bucket}/key', 'x-amz-copy-source-if-match': '"0"'})
    return f'{answer}, copied' if answer.is_fine else str(answer)


@row(CONDITIONS, 'the last step of a multipart upload, `if-none-match: *`, the key exists')
async def completing_if(ask):
    await ask.put('key', b'old')
    upload = await ask.begin('key')
    etag = await ask.part('key', upload, 1, b'new')
    answer = await ask.complete('key', upload, {1: etag}, {'if-none-match': '*'})
    await ask.abort('key', upload)
    is_written = (await ask('GET', 'key')).content == b'new'
    return f'{answer}, written' if is_written else str(answer)


# -- uploads

UPLOADS = 'Uploads'


@row(UPLOADS, 'PUT without `content-length`')
async def without_a_length(ask):
    code = ask.raw('PUT', 'unmeasured')
    return f'{code}, an empty object' if code == 200 else str(code)


@row(UPLOADS, 'PUT with `transfer-encoding: chunked`')
async def chunked(ask):
    code = ask.raw(
        'PUT', 'chunked', {'transfer-encoding': 'chunked'}, b'3\r\nabc\r\n0\r\n\r\n')
    if code != 200:
        return str(code)
    content = (await ask('GET', 'chunked')).content
    return f'{code}' if content == b'abc' else f'{code}, but the content is {content!r}'


@rows(UPLOADS,
      ('`expect: 100-continue`, the bucket exists', 'cells-uploads'),
      ('`expect: 100-continue`, the bucket does not exist', 'expected-bucket'))
async def expecting(bucket, ask):
    other = Asker(ask.server, ask.request, bucket)
    code = other.raw('PUT', 'key', {'content-length': '3', 'expect': '100-continue'})
    return '100 first' if code == 100 else str(code)


@row(UPLOADS, 'PUT into a bucket that does not exist')
async def no_bucket(ask):
    answer = await ask('PUT', 'key', content=b'', bucket='made-by-a-put')
    return f'{answer}, and makes it' if answer.is_fine else str(answer)


@row(UPLOADS, '`UNSIGNED-PAYLOAD` without TLS')
async def unsigned(ask):
    return str(await ask('PUT', 'key', content=b'abc', content_hash='UNSIGNED-PAYLOAD'))


@row(UPLOADS, 'a wrong `x-amz-content-sha256`')
async def wrong_sha256(ask):
    return str(await ask('PUT', 'key', content=b'abc',
                         content_hash=hashlib.sha256(b'other').hexdigest()))


@row(UPLOADS, 'a wrong `content-md5`')
async def wrong_md5(ask):
    return str(await ask('PUT', 'key', content=b'abc', headers={'content-md5': md5(b'other')}))


@row(UPLOADS, 'the ETag is the MD5 of the content')
async def etag_is_md5(ask):
    answer = await ask.put('key', b'abc')
    told = [answer.fields['etag'], (await ask('HEAD', 'key')).fields['etag']]
    return 'yes' if told == [f'"{hashlib.md5(b"abc").hexdigest()}"'] * 2 else 'no'


@row(UPLOADS, 'a copy of an object to itself, without a change')
async def copy_to_itself(ask):
    await ask.put('key')
    return str(await ask('PUT', 'key', headers={'x-amz-copy-source': f'/{ask.bucket}/key'}))


# -- checksums

CHECKSUMS = 'Checksums'


def crc(content, polynomial, bits):
    """A reflected cyclic redundancy check, bit by bit, in base64."""
    remainder = mask = (1 << bits) - 1
    for byte in content:
        remainder ^= byte
        for _ in range(8):
            remainder = remainder >> 1 ^ (polynomial if remainder & 1 else 0)
    return base64.b64encode((remainder ^ mask).to_bytes(bits // 8)).decode()


CHECKSUM_OF = {
    'crc32': lambda content: crc(content, 0xEDB88320, 32),
    'crc32c': lambda content: crc(content, 0x82F63B78, 32),
    'crc64nvme': lambda content: crc(content, 0x9A6C9329AC4BC9B5, 64),
    'sha1': lambda content: base64.b64encode(hashlib.sha1(content).digest()).decode(),
    'sha256': lambda content: base64.b64encode(hashlib.sha256(content).digest()).decode(),
}


@rows(CHECKSUMS, *((f'`x-amz-checksum-{name}`', name) for name in CHECKSUM_OF))
async def checksums(name, ask):
    field = f'x-amz-checksum-{name}'
    right, wrong = map(CHECKSUM_OF[name], (b'abc', b'other'))
    await ask.put('sum', b'abc', headers={field: right})
    told = (await ask('GET', 'sum', headers={'x-amz-checksum-mode': 'ENABLED'})).fields.get(field)
    answer = await ask('PUT', 'sum', content=b'abc', headers={field: wrong})
    return f'{"told" if told == right else "not told"}; a wrong one: {answer}'


@row(CHECKSUMS, 'it is told without `x-amz-checksum-mode`')
async def checksum_without_mode(ask):
    field = 'x-amz-checksum-sha256'
    await ask.put('sum', b'abc', headers={field: CHECKSUM_OF['sha256'](b'abc')})
    return 'yes' if field in (await ask('GET', 'sum')).fields else 'no'


@row(CHECKSUMS, 'it is told with a range, which it is not about')
async def checksum_with_range(ask):
    field = 'x-amz-checksum-sha256'
    await ask.put('sum', b'abc', headers={field: CHECKSUM_OF['sha256'](b'abc')})
    answer = await ask('GET', 'sum', headers={
        'x-amz-checksum-mode': 'ENABLED', 'range': 'bytes=0-1'})
    return 'yes' if field in answer.fields else 'no'


# -- aws-chunked

STREAMING = 'Content in chunks, `aws-chunked`'


class Chunked(Signing):
    """Signs a request and then the chunks of its content, which is `aws-chunked`."""

    def add_auth(self, request):
        super().add_auth(request)
        self.made = request
        self.last = request.headers['Authorization'].rpartition('Signature=')[2]

    def next_signature(self, kind, *parts):
        self.last = self.signature('\n'.join((
            f'AWS4-HMAC-SHA256-{kind}', self.made.context['timestamp'],
            self.credential_scope(self.made), self.last, *parts)), self.made)
        return self.last

    def encoded(self, chunks, trailer):
        """All of the content, with what a signed form has for each chunk."""
        is_signed = self.content_hash.startswith('STREAMING-AWS4')
        nothing = hashlib.sha256().hexdigest()
        for chunk in (*chunks, b''):
            signature = self.next_signature(
                'PAYLOAD', nothing, hashlib.sha256(chunk).hexdigest()) if is_signed else ''
            extension = f';chunk-signature={signature}' if is_signed else ''
            yield f'{len(chunk):x}{extension}\r\n'.encode()
            if chunk:
                yield chunk + b'\r\n'
        if trailer:
            yield f'{trailer}\r\n'.encode()
            if is_signed:
                signature = self.next_signature(
                    'TRAILER', hashlib.sha256(f'{trailer}\n'.encode()).hexdigest())
                yield f'x-amz-trailer-signature:{signature}\r\n'.encode()
        yield b'\r\n'


async def put_chunks(ask, form, spoil=lambda data: data):
    """PUT something in two chunks, in one of the three forms."""
    auth = Chunked(ask.credentials, form)
    chunks = b'a' * 8192, b'def'
    whole = b''.join(chunks)
    headers = {'content-encoding': 'aws-chunked', 'x-amz-decoded-content-length': str(len(whole))}
    trailer = ''
    if form.endswith('-TRAILER'):
        trailer = f'x-amz-checksum-crc32:{CHECKSUM_OF["crc32"](whole)}'
        headers['x-amz-trailer'] = 'x-amz-checksum-crc32'
    made = ask.signed('PUT', ask.url('stream'), headers, auth=auth)
    answer = await ask.send('PUT', made.url, made.headers.items(),
                            spoil(b''.join(auth.encoded(chunks, trailer))))
    if not answer.is_fine:
        return str(answer)
    got = await ask('GET', 'stream')
    if got.content == whole:
        encoding = got.fields.get('content-encoding')
        return f'{answer}' + (f', kept as `content-encoding: {encoding}`' if encoding else '')
    if b'\r\n' not in got.content:
        return f'{answer}, with the other content'
    return f'{answer}, kept with the chunks' + (
        ', cut off' if len(got.content) == len(whole) else '')


SIGNED = 'STREAMING-AWS4-HMAC-SHA256-PAYLOAD'
UNSIGNED = 'STREAMING-UNSIGNED-PAYLOAD-TRAILER'


@rows(STREAMING, *((f'`{form}`', form) for form in (UNSIGNED, SIGNED, f'{SIGNED}-TRAILER')))
async def in_chunks(form, ask):
    return await put_chunks(ask, form)


@row(STREAMING, 'unsigned, with other content than the trailer tells')
async def spoilt_chunks(ask):
    return await put_chunks(ask, UNSIGNED, lambda data: data.replace(b'def\r\n', b'xyz\r\n'))


# -- multipart uploads

MULTIPART = 'Multipart uploads'


@row(MULTIPART, 'two parts of 5 MiB and of a byte')
async def two_parts(ask):
    upload = await ask.begin('parts')
    etags = {1: await ask.part('parts', upload, 1, bytes(5 * MIB)),
             2: await ask.part('parts', upload, 2, b'x')}
    answer = await ask.complete('parts', upload, etags)
    got = await ask('GET', 'parts', headers={'range': f'bytes={5 * MIB - 1}-{5 * MIB}'})
    assert got.content == b'\0x'
    return str(answer)


@row(MULTIPART, 'the ETag ends in the number of parts, `-1`')
async def etag_of_parts(ask):
    upload = await ask.begin('parts')
    await ask.complete('parts', upload, {1: await ask.part('parts', upload, 1, b'x')})
    return 'yes' if (await ask('HEAD', 'parts')).fields['etag'].endswith('-1"') else 'no'


@row(MULTIPART, 'the last step tells the ETag of the object')
async def etag_in_the_end(ask):
    upload = await ask.begin('parts')
    answer = await ask.complete('parts', upload, {1: await ask.part('parts', upload, 1, b'x')})
    etag = (await ask('HEAD', 'parts')).fields['etag']
    told = answer.find('ETag')
    return ('yes' if told == etag else 'without its quotation marks' if told == etag.strip('"')
            else 'another one' if told else 'an empty one')


@row(MULTIPART, 'a first part of 1 MiB')
async def small_parts(ask):
    upload = await ask.begin('parts')
    etags = {1: await ask.part('parts', upload, 1, bytes(MIB)),
             2: await ask.part('parts', upload, 2, b'x')}
    answer = await ask.complete('parts', upload, etags)
    await ask.abort('parts', upload)
    return str(answer)


@row(MULTIPART, 'a wrong ETag of a part')
async def wrong_part(ask):
    upload = await ask.begin('parts')
    await ask.part('parts', upload, 1, b'x')
    answer = await ask.complete('parts', upload, {1: f'"{"0" * 32}"'})
    await ask.abort('parts', upload)
    return str(answer)


@row(MULTIPART, 'a part twice: which one counts')
async def part_twice(ask):
    upload = await ask.begin('parts')
    await ask.part('parts', upload, 1, b'first')
    answer = await ask('PUT', 'parts', content=b'second', query=[
        ('partNumber', '1'), ('uploadId', upload)])
    if not answer.is_fine:
        await ask.abort('parts', upload)
        return str(answer)
    answer = await ask.complete('parts', upload, {1: answer.fields['etag']})
    content = (await ask('GET', 'parts')).content
    return f'the {content.decode()}' if answer.is_fine else str(answer)


@row(MULTIPART, 'the parts are listed')
async def parts_listed(ask):
    upload = await ask.begin('parts')
    await ask.part('parts', upload, 1, b'x')
    await ask.part('parts', upload, 2, b'y')
    answer = await ask('GET', 'parts', query=[('uploadId', upload)])
    await ask.abort('parts', upload)
    told = answer.find_all('PartNumber')
    return 'yes' if told == ['1', '2'] else f'no: {answer}'


@row(MULTIPART, 'the uploads that have begun are listed')
async def uploads_listed(ask):
    upload = await ask.begin('parts')
    answer = await ask('GET', query=[('uploads', '')])
    await ask.abort('parts', upload)
    return 'yes' if upload in answer.find_all('UploadId') else f'no: {answer}'


@row(MULTIPART, 'an upload is aborted')
async def aborted(ask):
    upload = await ask.begin('parts')
    answer = await ask.abort('parts', upload)
    listed = await ask('GET', query=[('uploads', '')])
    assert upload not in listed.find_all('UploadId')
    return str(answer)


@row(MULTIPART, 'a part for one that was aborted')
async def part_of_nothing(ask):
    upload = await ask.begin('parts')
    await ask.abort('parts', upload)
    return str(await ask('PUT', 'parts', content=b'x', query=[
        ('partNumber', '1'), ('uploadId', upload)]))


@row(MULTIPART, 'one that is completed is completed again')
async def completed_twice(ask):
    upload = await ask.begin('parts')
    etags = {1: await ask.part('parts', upload, 1, b'x')}
    await ask.complete('parts', upload, etags)
    return str(await ask.complete('parts', upload, etags))


@row(MULTIPART, 'a part that is a range of another object')
async def copied_part(ask):
    await ask.put('digits')
    upload = await ask.begin('parts')
    answer = await ask('PUT', 'parts', query=[('partNumber', '1'), ('uploadId', upload)], headers={
        'x-amz-copy-source': f'/{ask.bucket}/digits', 'x-amz-copy-source-range': 'bytes=2-4'})
    if not answer.is_fine or not answer.find('ETag'):
        await ask.abort('parts', upload)
        return str(answer) if not answer.is_fine else f'{answer}, without an ETag'
    await ask.complete('parts', upload, {1: answer.find('ETag')})
    content = (await ask('GET', 'parts')).content
    return f'{answer}' if content == b'234' else f'{answer}, but {code_span(content.decode())}'


@row(MULTIPART, 'metadata and content type of its first request are kept')
async def fields_of_upload(ask):
    upload = await ask.begin('parts', headers={'x-amz-meta-a': 'b', 'content-type': 'text/x'})
    await ask.complete('parts', upload, {1: await ask.part('parts', upload, 1, b'x')})
    fields = (await ask('HEAD', 'parts')).fields
    kept = [fields.get('x-amz-meta-a') == 'b', fields.get('content-type') == 'text/x']
    return {(True, True): 'yes', (False, False): 'no', (True, False): 'metadata',
            (False, True): 'the type'}[tuple(kept)]


# -- listings

LISTINGS = 'Listings'
# In the order of their bytes, which is not that of UTF-16.
SORTED = ['A', 'a-', 'a/b', 'a/c', 'a0', 'b', 'é', '￮', '😀']


async def with_sorted(ask):
    await ask.clear()
    for key in reversed(SORTED):
        await ask.put(key)


@row(LISTINGS, 'keys in the order of their bytes')
async def order(ask):
    await with_sorted(ask)
    keys = await ask.listed()
    return 'yes' if keys == SORTED else f'no: {", ".join(map(code_span, keys))}'


@row(LISTINGS, '`encoding-type=url`')
async def encoded(ask):
    await ask.put('x y+z')
    answer = await ask('GET', query=[('encoding-type', 'url'), ('list-type', '2'),
                                     ('prefix', 'x')])
    return f'{code_span(answer.find("Key"))}, ' + (
        'told' if answer.find('EncodingType') == 'url' else 'not told')


@row(LISTINGS, '`start-after` a key that is there, or is not')
async def start_after(ask):
    await with_sorted(ask)
    after = [await ask.listed(**{'start-after': key}) for key in ('a0', 'a1')]
    rest = SORTED[SORTED.index('b'):]
    return 'yes' if after == [rest] * 2 else 'no: ' + ' and '.join(
        f'{len(each)} of {len(rest)}' for each in after)


@row(LISTINGS, 'pages by `max-keys=2`: each key once')
async def pages(ask):
    await with_sorted(ask)
    keys, sizes, more = [], [], []
    while len(sizes) < 30:
        answer = await ask('GET', query=[*more, ('encoding-type', 'url'), ('list-type', '2'),
                                         ('max-keys', '2')])
        if not answer.is_fine:
            return str(answer)
        page = answer.find_all('Key')
        sizes.append(len(page))
        keys += map(urllib.parse.unquote_plus, page)
        if answer.find('IsTruncated') != 'true':
            break
        more = [('continuation-token', answer.find('NextContinuationToken'))]
    if len(sizes) == 1:
        return 'one page'
    missing = [key for key in SORTED if key not in keys]
    if missing:
        return f'without {", ".join(map(code_span, missing))}'
    return 'yes' if len(keys) == len(SORTED) else 'some twice'


@row(LISTINGS, '`delimiter=/`')
async def delimiter(ask):
    await with_sorted(ask)
    answer = await ask('GET', query=[('delimiter', '/'), ('list-type', '2'), ('prefix', 'a')])
    prefixes = [prefix for prefix in answer.find_all('Prefix') if prefix != 'a']
    return (f'{", ".join(map(code_span, answer.find_all("Key")))}; '
            f'{", ".join(map(code_span, prefixes))}')


@row(LISTINGS, '`delimiter=-`')
async def other_delimiter(ask):
    await ask.clear()
    for key in ('p-1', 'p-2', 'q'):
        await ask.put(key)
    answer = await ask('GET', query=[('delimiter', '-'), ('list-type', '2')])
    prefixes = [prefix for prefix in answer.find_all('Prefix') if prefix]
    return (f'{", ".join(map(code_span, answer.find_all("Key")))}; '
            f'{", ".join(map(code_span, prefixes)) or "no prefix"}')


@row(LISTINGS, 'a prefix that ends in the middle of a name')
async def prefix(ask):
    await with_sorted(ask)
    keys = await ask.listed(prefix='a/')
    middle = await ask.listed(prefix='a')
    return 'yes' if keys == ['a/b', 'a/c'] and sorted(middle) == SORTED[1:5] else (
        f'`a/`: {", ".join(map(code_span, keys))}; `a`: {", ".join(map(code_span, middle))}')


@row(LISTINGS, 'the ETag has its quotation marks')
async def listed_etag(ask):
    await ask.put('key')
    answer = await ask('GET', query=[('list-type', '2')])
    told = answer.find('ETag')
    return 'no ETag' if not told else 'yes' if told.startswith('"') else 'no'


@row(LISTINGS, 'a bucket that does not exist')
async def listed_nothing(ask):
    return str(await ask('GET', query=[('list-type', '2')], bucket='missing-bucket'))


# -- keys

KEYS = 'Keys'
# No file system has names of more than 255 bytes.
LONG = '/'.join(['x' * 200] * 5).ljust(1024, 'y')


@rows(KEYS,
      ('`a b`', 'a b'),
      ('`a+b`', 'a+b'),
      ('`a#b?c%20`', 'a#b?c%20'),
      ('`"<>&\'`', '"<>&\''),
      ('`a\\b`', 'a\\b'),
      ('a tab and a line feed', 'a\tb\nc'),
      ('`é` as two characters', 'e\u0301'),
      ('`😀`', '😀'),
      ('`d/`, with content', 'd/'),
      ('`a//b`', 'a//b'),
      ('`/a`', '/a'),
      ('`a/`, `/` and `b`: `a//b/`', 'a//b/'),
      ('`.`', '.'),
      ('`..`', '..'),
      ('`a/./b`', 'a/./b'),
      ('`a/../b`', 'a/../b'),
      ('`/../a`', '/../a'),
      ('of 1,024 bytes, with slashes', LONG),
      ('of 1,025 bytes, with slashes', f'{LONG}z'))
async def keys(key, ask):
    try:
        return await what_becomes_of(key, ask)
    finally:
        with contextlib.suppress(HttpError):
            await ask('DELETE', key)
            await ask.clear()


async def what_becomes_of(key, ask):
    await ask.put('other')
    try:
        answer = await ask('PUT', key, content=b'content')
    except HttpError:
        return 'closes the connection'
    if not answer.is_fine:
        return str(answer)
    # SeaweedFS lists a key that ends in a slash for a moment longer than it is there.
    listed = [each for each in await ask.listed() if each == key or each not in ('other', 'd/')]
    got = await ask('GET', key)
    text = []
    if listed != [key]:
        text.append(f'listed as {", ".join(map(named, listed))}' if listed else 'not listed')
    if not got.is_fine:
        text.append(f'GET: {got}')
    elif got.content != b'content':
        text.append('without its content' if not got.content else 'with other content')
    return '; '.join(text) or 'as it is'


def named(key):
    """A key as the page shows it."""
    if len(key) > 100:
        return f'{len(key.encode())} bytes'
    return code_span(key.replace('\t', '\\t').replace('\n', '\\n'))


@row(KEYS, '`a` and then `a/b`')
async def name_and_folder(ask):
    await ask.clear()
    await ask.put('a', b'1')
    answer = await ask('PUT', 'a/b', content=b'2')
    first = await ask('GET', 'a')
    await ask('DELETE', 'a/b')
    await ask.clear()
    if not answer.is_fine:
        return f'the second: {answer}'
    return 'both' if first.content == b'1' else f'the first is lost: {first}'


@row(KEYS, 'a `+` in the path that is not encoded')
async def plus(ask):
    made = ask.signed('PUT', f'{ask.url()}/a+b', content_hash=hashlib.sha256(b'c').hexdigest())
    answer = await ask.send('PUT', made.url, made.headers.items(), b'c')
    if not answer.is_fine:
        return str(answer)
    listed = [key for key in await ask.listed() if key != 'other']
    await ask.clear()
    return f'{answer}, {", ".join(map(code_span, listed))}'


# -- deleting

DELETING = 'Deleting'


def deletion(keys, quiet=False):
    objects = ''.join(f'<Object><Key>{escape(key)}</Key></Object>' for key in keys)
    return (f'<Delete>{"<Quiet>true</Quiet>" if quiet else ""}{objects}</Delete>').encode()


@row(DELETING, 'a key that is missing')
async def delete_missing(ask):
    return str(await ask('DELETE', 'missing'))


async def delete_many(ask, keys, headers, quiet=False):
    content = deletion(keys, quiet)
    return await ask('POST', query=[('delete', '')], content=content, headers=headers or {
        'content-md5': md5(content)})


@row(DELETING, 'many at once')
async def many(ask):
    keys = ['a', 'b&c', '<d>', 'e/f']
    for key in keys:
        await ask.put(key)
    answer = await delete_many(ask, [*keys, 'missing'], None)
    left = [key for key in keys if (await ask('HEAD', key)).is_fine]
    missing = 'missing' in answer.find_all('Key')
    return f'{answer}' + (f', but {", ".join(map(code_span, left))} stay' if left else '') + (
        '' if missing else ', the missing one is not told')


@row(DELETING, 'many, quietly: what is told')
async def quietly(ask):
    await ask.put('a')
    answer = await delete_many(ask, ['a', 'missing'], None, quiet=True)
    return f'{len(answer.find_all("Deleted"))} of 2' if answer.is_fine else str(answer)


@row(DELETING, 'many, without `content-md5` and checksum')
async def many_without_md5(ask):
    await ask.put('a')
    return str(await delete_many(ask, ['a'], {'x': 'y'}))


@row(DELETING, 'many, with a wrong `content-md5`')
async def many_with_wrong_md5(ask):
    await ask.put('a')
    return str(await delete_many(ask, ['a'], {'content-md5': md5(b'other')}))


@row(DELETING, '1,001 at once')
async def too_many(ask):
    return str(await delete_many(ask, [f'missing-{number}' for number in range(1001)], None))


@row(DELETING, 'a bucket that has an object')
async def full_bucket(ask):
    await ask('PUT', bucket='full-bucket')
    await ask('PUT', 'key', content=b'', bucket='full-bucket')
    answer = await ask('DELETE', bucket='full-bucket')
    is_gone = not (await ask('HEAD', 'key', bucket='full-bucket')).is_fine
    return f'{answer}, with the object' if is_gone else str(answer)


# -- signatures

SIGNATURES = 'Signatures'


def at(seconds):
    """Signs as if the clock were off by so many."""
    class Late(Signing):
        def _modify_request_before_signing(self, request):
            now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
            request.context['timestamp'] = now.strftime('%Y%m%dT%H%M%SZ')
            super()._modify_request_before_signing(request)

    return Late


@row(SIGNATURES, 'none')
async def no_signature(ask):
    await ask.put('key')
    return str(await ask.send('GET', ask.url('key')))


@row(SIGNATURES, 'with a wrong secret')
async def wrong_secret(ask):
    await ask.put('key')
    auth = Signing(Credentials(ask.server.access_key_id, 'wrong'), hashlib.sha256().hexdigest())
    return str(await ask('GET', 'key', auth=auth))


@row(SIGNATURES, 'with an access key ID that is not known')
async def unknown_key(ask):
    await ask.put('key')
    auth = Signing(Credentials('UNKNOWN', 'wrong'), hashlib.sha256().hexdigest())
    return str(await ask('GET', 'key', auth=auth))


@row(SIGNATURES, 'with a session token that is not known')
async def unknown_token(ask):
    await ask.put('key')
    auth = Signing(Credentials(ask.server.access_key_id, ask.server.secret_access_key, 'token'),
                   hashlib.sha256().hexdigest())
    return str(await ask('GET', 'key', auth=auth))


@row(SIGNATURES, 'of another region')
async def other_region(ask):
    await ask.put('key')
    auth = Signing(ask.credentials, hashlib.sha256().hexdigest())
    auth._region_name = 'eu-west-2'
    return str(await ask('GET', 'key', auth=auth))


@row(SIGNATURES, 'of a clock that is 20 minutes off')
async def clock(ask):
    await ask.put('key')
    return str(await ask('GET', 'key', auth=at(-1200)(
        ask.credentials, hashlib.sha256().hexdigest())))


def presigning(ask, expires=60):
    return S3SigV4QueryAuth(ask.credentials, 's3', 'us-east-1', expires=expires)


def presigned_url(ask, method='GET', key='key', query=(), headers=(), expires=60):
    return ask.signed(method, ask.url(key, query), headers, auth=presigning(ask, expires)).url


@row(SIGNATURES, 'presigned, GET')
async def presigned_get(ask):
    await ask.put('key')
    return str(await ask.send('GET', presigned_url(ask)))


@row(SIGNATURES, 'presigned, PUT')
async def presigned_put(ask):
    answer = await ask.send('PUT', presigned_url(ask, 'PUT'), content=b'put')
    if answer.is_fine:
        assert (await ask('GET', 'key')).content == b'put'
    return str(answer)


@row(SIGNATURES, 'presigned for GET, and sent as DELETE')
async def presigned_other(ask):
    await ask.put('key')
    return str(await ask.send('DELETE', presigned_url(ask)))


@row(SIGNATURES, 'presigned, with another key in the URL')
async def presigned_changed(ask):
    await ask.put('kez')
    return str(await ask.send('GET', presigned_url(ask).replace('/key?', '/kez?')))


@row(SIGNATURES, 'presigned, and expired')
async def presigned_expired(ask):
    class Old(S3SigV4QueryAuth):
        def _modify_request_before_signing(self, request):
            request.context['timestamp'] = (
                datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=100)
            ).strftime('%Y%m%dT%H%M%SZ')
            super()._modify_request_before_signing(request)

    await ask.put('key')
    url = ask.signed('GET', ask.url('key'), auth=Old(
        ask.credentials, 's3', 'us-east-1', expires=60)).url
    return str(await ask.send('GET', url))


@row(SIGNATURES, 'presigned with a field, which is not sent')
async def presigned_without_field(ask):
    url = presigned_url(ask, 'PUT', headers={'content-type': 'text/x'})
    return str(await ask.send('PUT', url, content=b'put'))


@row(SIGNATURES, 'presigned, with `response-content-type`')
async def presigned_override(ask):
    await ask.put('key')
    answer = await ask.send('GET', presigned_url(ask, query=[
        ('response-content-type', 'text/other')]))
    return ('overridden' if answer.fields.get('content-type') == 'text/other' else
            f'{answer}, ignored') if answer.is_fine else str(answer)


# -- what is kept with an object

FIELDS = 'Fields of objects'
KEPT = {'cache-control': 'no-cache', 'content-disposition': 'attachment; filename="a b"',
        'content-language': 'de', 'content-type': 'text/x; charset=utf-8',
        'expires': 'Fri, 01 Jan 2100 00:00:00 GMT'}


@row(FIELDS, '`content-type` and four others are kept')
async def kept(ask):
    await ask.put('key', headers=KEPT)
    fields = (await ask('GET', 'key')).fields
    lost = [name for name, value in KEPT.items() if fields.get(name) != value]
    return f'without {", ".join(map(code_span, lost))}' if lost else 'yes'


@row(FIELDS, '`content-type` that was not given')
async def default_type(ask):
    await ask.put('untyped')
    return code_span((await ask('GET', 'untyped')).fields.get('content-type', 'none'))


@row(FIELDS, '`content-encoding` is kept')
async def content_encoding(ask):
    await ask.put('key', headers={'content-encoding': 'x-own'})
    told = (await ask('GET', 'key')).fields.get('content-encoding')
    return 'yes' if told == 'x-own' else f'no: {told}' if told else 'no'


@row(FIELDS, '`x-amz-meta-` with ASCII')
async def metadata(ask):
    await ask.put('key', headers={'x-amz-meta-A-b': 'c  d'})
    told = (await ask('HEAD', 'key')).fields.get('x-amz-meta-a-b')
    return 'kept' if told == 'c  d' else f'{code_span(str(told))} for `c  d`'


@row(FIELDS, '`x-amz-meta-` with `é`, in UTF-8')
async def other_metadata(ask):
    answer = await ask('PUT', 'key', content=b'', headers={'x-amz-meta-a': 'é'})
    if not answer.is_fine:
        return str(answer)
    told = (await ask('HEAD', 'key')).fields.get('x-amz-meta-a')
    return ('kept' if told == 'é'.encode().decode('latin-1') else 'in Latin-1' if told == 'é'
            else code_span(ascii(told)[1:-1]) if told else 'lost')


@row(FIELDS, 'a copy has the metadata of its source')
async def copied_metadata(ask):
    await ask.put('key', headers={'x-amz-meta-a': 'b', 'content-type': 'text/x'})
    await ask('PUT', 'copied', headers={'x-amz-copy-source': f'/{ask.bucket}/key'})
    fields = (await ask('HEAD', 'copied')).fields
    kept = (fields.get('x-amz-meta-a'), fields.get('content-type'))
    others = [name for name in fields if name.startswith('x-amz-meta-') and name[11:] != 'a']
    return ('yes' if kept == ('b', 'text/x') else 'not all' if any(kept) else 'no') + (
        f', and {", ".join(map(code_span, others))}' if others else '')


@row(FIELDS, 'a copy with `x-amz-metadata-directive: REPLACE` has its own')
async def replaced_metadata(ask):
    await ask.put('key', headers={'x-amz-meta-a': 'b'})
    answer = await ask('PUT', 'copied', headers={
        'x-amz-copy-source': f'/{ask.bucket}/key', 'x-amz-metadata-directive': 'REPLACE',
        'x-amz-meta-a': 'c'})
    told = (await ask('HEAD', 'copied')).fields.get('x-amz-meta-a')
    return ('yes' if told == 'c' else 'no') if answer.is_fine else str(answer)


@row(FIELDS, 'a copy tells its ETag')
async def etag_of_copy(ask):
    await ask.put('key')
    answer = await ask('PUT', 'copied', headers={'x-amz-copy-source': f'/{ask.bucket}/key'})
    etag = (await ask('HEAD', 'copied')).fields['etag']
    told = answer.find('ETag')
    return ('yes' if told == etag else 'without its quotation marks' if told == etag.strip('"')
            else 'no')


@row(FIELDS, 'a copy of a key with `é #+%`')
async def copied_key(ask):
    await ask.put('é #+%', b'odd')
    answer = await ask('PUT', 'copied', headers={
        'x-amz-copy-source': f'/{ask.bucket}/{quoted("é #+%")}'})
    if answer.is_fine:
        assert (await ask('GET', 'copied')).content == b'odd'
    return str(answer)


@row(FIELDS, '`response-cache-control` in a signed GET')
async def override(ask):
    await ask.put('key')
    answer = await ask('GET', 'key', query=[('response-cache-control', 'no-store')])
    return ('overridden' if answer.fields.get('cache-control') == 'no-store' else
            'ignored') if answer.is_fine else str(answer)


# -- versions

VERSIONS = 'Versions'


async def with_versions(ask):
    return await ask('PUT', query=[('versioning', '')], content=(
        b'<VersioningConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        b'<Status>Enabled</Status></VersioningConfiguration>'))


@row(VERSIONS, 'versions are switched on')
async def switched_on(ask):
    return str(await with_versions(ask))


@row(VERSIONS, 'PUT tells the version, and `versionId` reads it')
async def versions(ask):
    await with_versions(ask)
    told = [(await ask.put('key', content)).fields.get('x-amz-version-id')
            for content in (b'old', b'new')]
    if None in told:
        return 'no version'
    answer = await ask('GET', 'key', query=[('versionId', told[0])])
    return 'yes' if answer.content == b'old' else f'told, GET: {answer}'


@row(VERSIONS, 'DELETE of an object that has versions')
async def marker(ask):
    await with_versions(ask)
    await ask.put('key')
    answer = await ask('DELETE', 'key')
    is_marker = answer.fields.get('x-amz-delete-marker') == 'true'
    return f'{answer}, a marker' if is_marker else str(answer)


@row(VERSIONS, 'GET with a `versionId` that is not there')
async def no_version(ask):
    await with_versions(ask)
    await ask.put('key')
    return str(await ask('GET', 'key', query=[('versionId', 'L4kqtJlcpXroDTDmpUMLUo0AAAAAAAAA')]))


# -- errors

ERRORS = 'Errors'


@rows(ERRORS,
      ('GET of a key that is missing', 'GET'),
      ('HEAD of a key that is missing', 'HEAD'))
async def missing_key(method, ask):
    return str(await ask(method, 'missing'))


@row(ERRORS, 'GET of a key, and the bucket is missing')
async def missing_bucket(ask):
    return str(await ask('GET', 'key', bucket='missing-bucket'))


@row(ERRORS, 'the request ID of an error')
async def request_id(ask):
    answer = await ask('GET', 'missing')
    places = [name for name, is_there in (
        ('field', answer.fields.get('x-amz-request-id')), ('XML', answer.find('RequestId')))
        if is_there]
    return ' and '.join(places) or 'none'


@row(ERRORS, 'the `content-type` of an error')
async def type_of_error(ask):
    return code_span((await ask('GET', 'missing')).fields.get('content-type', 'none'))


@row(ERRORS, 'an error in reply to a PUT without `expect`: the connection')
async def after_an_error(ask):
    answer = await ask('PUT', 'key', content=b'x' * 100_000, bucket='absent-bucket',
                       headers={'content-md5': md5(b'other')})
    return 'no error' if answer.is_fine else 'closed' if (
        answer.fields.get('connection') == 'close') else 'kept'


# -------------------------------------------------------------------------------- and on the page


async def column_of(server, heading):
    """From the rows of a table to what a server does, in the words of the page."""
    request, close = Pool(socket_timeout=10)
    try:
        ask = Asker(server, request, f'cells-{heading.split()[0].lower()}')
        assert (await ask('PUT')).code in (200, 409)
        return {text: (await function(ask)).replace('|', '\\|')
                for text, function in TABLES[heading].items()}
    finally:
        await close()


def cells_of(line):
    return [cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1]]


def page_cells(page):
    """From (heading, first cell, name of a column) to the cell of the page's tables."""
    cells = {}
    heading = names = None
    for line in page.splitlines():
        if line.startswith('## '):
            heading, names = line[3:], None
        elif line.startswith('| '):
            first, *rest = cells_of(line)
            if names is None:
                names = rest
            elif not first.startswith('---'):
                cells.update({(heading, first, name): cell
                              for name, cell in zip(names, rest, strict=True)})
    return cells


CELLS = page_cells(PAGE.read_text(encoding='utf-8'))


@pytest.mark.parametrize('name, heading', list(itertools.product(NAMES, TABLES)))
@on_one_loop
async def test_a_server_does_what_the_page_says(s3_server, name, heading):
    server = s3_server(name)
    seen = await column_of(server, heading)
    on_page = {text: CELLS.get((heading, text, name)) for text in TABLES[heading]}
    if seen != on_page and server.version != (version := CELLS['The servers', name, 'version']):
        pytest.skip(f'the page is about {version}, and {server.version} does something else: '
                    f'{dict(seen.items() - on_page.items())}. Write it anew, by '
                    'python -m tests.outside.test_s3_servers')
    assert seen == on_page


def test_the_page_has_these_rows_and_no_others():
    assert [(heading, text) for heading, text, name in CELLS if name == NAMES[0]] == [
        (heading, text) for heading, rows in TABLES.items() for text in rows]


# -------------------------------------------------------------------------------- writing the page


def table_of(heading, cells):
    """The lines of a table of the page."""
    yield f'| {"the range" if heading == RANGES else "what is asked"} | {" | ".join(NAMES)} |'
    yield '| --- ' * (len(NAMES) + 1) + '|'
    for text in TABLES[heading]:
        told = (cells.get((heading, text, name), '') for name in NAMES)
        yield f'| {text} | {" | ".join(told)} |'


def rewritten(page, cells):
    """The page with other tables. They stand where the old ones did, or below their headings."""
    for heading in TABLES:
        before, title, rest = page.partition(f'\n## {heading}\n')
        assert title, f'{PAGE} must have the heading {heading}'
        old = re.search(r'(?:^\|.*\n)+|\Z', rest.partition('\n## ')[0] + '\n', re.MULTILINE)
        table = '\n'.join(table_of(heading, cells)) + '\n'
        page = before + title + rest[:old.start()] + table + rest[old.end():]
    return page


async def ask_all(cells, directory):
    for name in NAMES:
        folder = directory / name
        folder.mkdir()
        try:
            context = starting(name, folder, lambda: directory)
        except pytest.skip.Exception as why:
            print(f'{name}: {why}')
            continue
        with context as server:
            for heading in TABLES:
                for text, seen in (await column_of(server, heading)).items():
                    print(f'{name}: {heading}: {text}: {seen}')
                    cells[heading, text, name] = seen
            cells['The servers', name, 'version'] = server.version


def main():
    page = PAGE.read_text(encoding='utf-8')
    cells = page_cells(page)
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(ask_all(cells, pathlib.Path(directory)))
    PAGE.write_text(rewritten(page, cells), encoding='utf-8')


if __name__ == '__main__':
    main()
