"""Copies a folder to S3, from S3, or within S3, many files at once.

    python examples/s3_copy.py photos s3://bucket/photos
    python examples/s3_copy.py s3://bucket/photos photos
    python examples/s3_copy.py s3://bucket/photos s3://other-bucket/photos

Credentials are those of AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN. A file
that the target has in the same size, and not older, is skipped. Nothing is deleted. A file that
fails is reported, the others go on, and the exit code is 1.

Each file is one request, and S3 takes up to 5 GiB in one.
"""
import argparse
import asyncio
import os
import re
import secrets
import sys
from datetime import datetime
from html import unescape
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote_plus
from xml.etree import ElementTree

from lowhaio_aws_sigv4 import object_url, signed
from lowhaio_retry import retry
from tqdm import tqdm

from lowhaio import HttpConnectionError, HttpDataError, HttpError, Pool, buffered

CHUNK = 64 * 1024


class CopyError(Exception):
    """A file, or all of them, can not be copied."""


class File(NamedTuple):
    size: int
    modified: float


class Folder:
    """A local folder. Files have names relative to it, with slashes."""

    def __init__(self, path):
        self.path = path

    async def files(self, on_error):
        files = {}
        for directory, _, names in os.walk(
                self.path, onerror=lambda error: on_error(error.filename, error)):
            for path in (Path(directory, name) for name in names):
                try:
                    stat = path.stat()
                except OSError as error:
                    on_error(path, error)
                else:
                    if path.is_file():
                        name = path.relative_to(self.path).as_posix()
                        files[name] = File(stat.st_size, stat.st_mtime)
        return files

    def path_of(self, name):
        """Refuses what is no path, and what would lead out of the folder, also by a link."""
        path = self.path / name
        if (not {'', '.', '..'}.isdisjoint(name.split('/')) or '\0' in name
                or not path.resolve().is_relative_to(self.path.resolve())):
            raise CopyError('its key is no path in the folder')
        return path


class Bucket:
    """The objects of a bucket under a prefix. Files have names relative to that."""

    def __init__(self, request, endpoint, bucket, folder):
        self.request = request
        self.name = bucket
        self.prefix = folder if not folder or folder.endswith('/') else folder + '/'
        self.url = f'{endpoint}/{bucket}'

    def url_of(self, name):
        return object_url(self.url, self.prefix + name)

    async def files(self, on_error):
        """ListObjectsV2, page by page."""
        files = {}
        # The encoding is for keys with characters that XML does not have.
        params = {'list-type': '2', 'prefix': self.prefix, 'encoding-type': 'url'}
        while True:
            page = ElementTree.fromstring(await self.ask(b'GET', self.url, params=params))
            decoded = unquote_plus if page.findtext('{*}EncodingType') == 'url' else str
            for entry in page.iterfind('{*}Contents'):
                name = decoded(entry.findtext('{*}Key')).removeprefix(self.prefix)
                modified = datetime.fromisoformat(entry.findtext('{*}LastModified'))
                # What ends with a slash is what some programs make in place of a folder.
                if name and not name.endswith('/'):
                    files[name] = File(int(entry.findtext('{*}Size')), modified.timestamp())
            params['continuation-token'] = page.findtext('{*}NextContinuationToken')
            if not params['continuation-token']:
                return files

    async def ask(self, method, url, **kwargs):
        """The body of a response that has to be 200."""
        code, _, body = await self.request(method, url, **kwargs)
        data = await buffered(body)
        # An error of a copy may come late, after 200.
        if code != b'200' or b'<Error>' in data[:100]:
            told = re.findall(rb'<(?:Code|Message)>(.*?)</', data, re.DOTALL)
            message = b': '.join((b'S3 answered ' + code, *told)).decode(errors='replace')
            raise CopyError(unescape(message))
        return data


async def upload(folder, bucket, name, file, moved):
    async def chunks():
        with open(path, 'rb') as opened:
            while chunk := opened.read(CHUNK):
                yield chunk
                moved(len(chunk))

    path = folder.path / name
    await bucket.ask(b'PUT', bucket.url_of(name), body=chunks,
                     headers=((b'content-length', b'%d' % path.stat().st_size),))


async def download(bucket, folder, name, file, moved):
    """To a temporary name, so that what has the file's name is always the whole of it."""
    path = folder.path_of(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{secrets.token_hex(8)}.part')
    try:
        with open(temporary, 'xb') as opened:
            await bucket.ask(b'GET', bucket.url_of(name), to=opened, moved=moved)
            if opened.tell() != file.size:
                raise CopyError(f'{opened.tell()} bytes came, but {file.size} were listed')
        os.utime(temporary, (file.modified, file.modified))
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


async def copy(source, target, name, file, moved):
    """By S3 itself: nothing of it comes here."""
    path = quote(f'/{source.name}/{source.prefix}{name}')
    await target.ask(b'PUT', target.url_of(name), headers=((b'x-amz-copy-source', path.encode()),))
    moved(file.size)


COPIES = {(Folder, Bucket): upload, (Bucket, Folder): download, (Bucket, Bucket): copy}


def to_file(request):
    """A layer: with `to`, the content of the response is written to that file.

    It is to be inside of `retry`: then a body that breaks off is asked for again, too.
    """
    async def request_to_file(method, url, *, to=None, moved=None, **kwargs):
        code, headers, body = await request(method, url, **kwargs)
        if to is not None and code == b'200':
            to.seek(0)
            to.truncate()
            async for chunk in body:
                to.write(chunk)
                moved(len(chunk))
        return code, headers, body

    return request_to_file


async def copy_all(request, endpoint, args):
    """Prints what happened, and returns if all is well."""
    async def work():
        for name, file in jobs:
            try:
                await COPIES[type(source), type(target)](source, target, name, file, bar.update)
            except (CopyError, HttpError, OSError, UnicodeError) as error:
                on_error(name, error)

    def on_error(name, error):
        failed.append(name)
        reason = error if isinstance(error, CopyError) else f'{type(error).__name__}: {error}'
        tqdm.write(f'{str(name)!r}: {reason}', file=sys.stderr)

    source, target = (
        Folder(place) if isinstance(place, Path) else Bucket(request, endpoint, *place)
        for place in (args.source, args.target))
    failed = []
    files = await source.files(on_error)
    # The target may not be there yet.
    there = await target.files(lambda name, error: None)
    wanted = {name: file for name, file in sorted(files.items()) if name not in there
              or file.size != there[name].size or file.modified > there[name].modified}
    jobs = iter(wanted.items())
    with tqdm(total=sum(file.size for file in wanted.values()), unit='B', unit_scale=True,
              unit_divisor=1024) as bar:
        async with asyncio.TaskGroup() as group:
            for _ in range(args.concurrency):
                group.create_task(work())
    unfinished = sum(name in wanted for name in failed)
    print(f'{len(wanted) - unfinished} copied, {len(files) - len(wanted)} skipped, '
          f'{len(failed)} failed')
    return not failed


async def run(args, credentials):
    async def get_credentials():
        return credentials

    request, close = Pool(max_connections=args.concurrency, socket_timeout=30)
    # In TLS a body can not be changed on its way, so it is streamed from the disk to S3. Without
    # TLS it is signed, and for that it is read to its end before it is sent.
    endpoint = (args.endpoint_url or f'https://s3.{args.region}.amazonaws.com').rstrip('/')
    request = signed(
        request, get_credentials, 's3', args.region,
        body_hash='UNSIGNED-PAYLOAD' if endpoint.lower().startswith('https:') else None)
    # Whatever is sent here has the same effect when it is sent twice.
    request = retry(
        to_file(request), ((HttpConnectionError, (0, 1, 2)), (HttpDataError, (0, 1, 2))),
        code_intervals=[(code, (1, 2, 4)) for code in (b'429', b'500', b'502', b'503')],
        jitter=0.5)
    try:
        return await copy_all(request, endpoint, args)
    finally:
        await close()


def place(text):
    """A folder, or the bucket and the folder in it."""
    if match := re.fullmatch('s3://([A-Za-z0-9][A-Za-z0-9._-]+)(?:/(.*))?', text, re.DOTALL):
        return match.groups('')
    if text.startswith('s3:'):
        raise argparse.ArgumentTypeError(f'{text!r} is not s3://BUCKET or s3://BUCKET/FOLDER')
    return Path(text)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=place, help='a folder, or s3://BUCKET/FOLDER')
    parser.add_argument('target', type=place, help='the same; one of the two must be in S3')
    parser.add_argument('--region', default=os.environ.get('AWS_REGION', 'us-east-1'))
    parser.add_argument('--endpoint-url', metavar='URL', default=os.environ.get(
        'AWS_ENDPOINT_URL'), help='of another server that speaks the protocol of S3')
    parser.add_argument('--concurrency', type=int, default=16, metavar='N',
                        help='files at once (default: 16)')
    args = parser.parse_args()
    if isinstance(args.source, Path) and isinstance(args.target, Path):
        parser.error('source or target must be s3://BUCKET or s3://BUCKET/FOLDER')
    if isinstance(args.source, Path) and not args.source.is_dir():
        parser.error(f'{args.source} is not a folder')
    if args.concurrency < 1:
        parser.error('--concurrency must be 1 or more')
    try:
        key_id, key = os.environ['AWS_ACCESS_KEY_ID'], os.environ['AWS_SECRET_ACCESS_KEY']
    except KeyError as error:
        parser.error(f'{error.args[0]} must be in the environment')
    token = os.environ.get('AWS_SESSION_TOKEN')
    credentials = key_id, key, ((b'x-amz-security-token', token.encode()),) if token else ()

    try:
        sys.exit(not asyncio.run(run(args, credentials)))
    except (CopyError, HttpError, OSError, ValueError) as error:
        sys.exit(f'{type(error).__name__}: {error}')
    except ElementTree.ParseError:
        sys.exit('What was answered is no list of objects: is the endpoint one of S3?')
    except KeyboardInterrupt:
        print('Interrupted: what has been copied stays', file=sys.stderr)
        sys.exit(130)


if __name__ == '__main__':
    main()
