"""Copies a folder to S3, from S3, or within S3, many files at once.

    python examples/s3_copy.py photos s3://bucket/photos
    python examples/s3_copy.py s3://bucket/photos photos
    python examples/s3_copy.py s3://bucket/photos s3://other-bucket/photos

The credentials are in AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN. A file is
skipped if the target has one of the same size that is not older. Nothing is deleted. If a file
fails, that is reported, the others go on, and the exit code is 1.

Each file is sent in one request, for which S3 has a limit of 5 GiB.
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
    """One file, or all of them, cannot be copied."""


class File(NamedTuple):
    size: int
    modified: float


class Folder:
    """A local folder. The names of files are relative to it, and have slashes."""

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
        """The path of a file. Raises if it would be outside of the folder, also by a link."""
        path = self.path / name
        if (not {'', '.', '..'}.isdisjoint(name.split('/')) or '\0' in name
                or not path.resolve().is_relative_to(self.path.resolve())):
            raise CopyError('its key is no path in the folder')
        return path


class Bucket:
    """The objects of a bucket under a prefix. The names of files are relative to the prefix."""

    def __init__(self, request, endpoint, bucket, folder):
        self.request = request
        self.name = bucket
        self.prefix = folder if not folder or folder.endswith('/') else folder + '/'
        self.url = f'{endpoint}/{bucket}'

    def url_of(self, name):
        return object_url(self.url, self.prefix + name)

    async def files(self, on_error):
        """All files, from the pages of ListObjectsV2."""
        files = {}
        # Keys are asked for URL-encoded, because XML does not have all characters.
        params = {'list-type': '2', 'prefix': self.prefix, 'encoding-type': 'url'}
        while True:
            page = ElementTree.fromstring(await self.ask(b'GET', self.url, params=params))
            decoded = unquote_plus if page.findtext('{*}EncodingType') == 'url' else str
            for entry in page.iterfind('{*}Contents'):
                name = decoded(entry.findtext('{*}Key')).removeprefix(self.prefix)
                modified = datetime.fromisoformat(entry.findtext('{*}LastModified'))
                # Some programs make an object whose key ends with a slash for each folder.
                if name and not name.endswith('/'):
                    files[name] = File(int(entry.findtext('{*}Size')), modified.timestamp())
            params['continuation-token'] = page.findtext('{*}NextContinuationToken')
            if not params['continuation-token']:
                return files

    async def ask(self, method, url, **kwargs):
        """The body of a response, which must be a 200."""
        code, _, body = await self.request(method, url, **kwargs)
        data = await buffered(body)
        # A copy inside S3 may fail after the 200 has been sent.
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
    """Write to a temporary name first, so that a file with the right name is always whole."""
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
    """Let S3 copy the file itself, so that its content is not transferred."""
    path = quote(f'/{source.name}/{source.prefix}{name}')
    await target.ask(b'PUT', target.url_of(name), headers=((b'x-amz-copy-source', path.encode()),))
    moved(file.size)


COPIES = {(Folder, Bucket): upload, (Bucket, Folder): download, (Bucket, Bucket): copy}


def to_file(request):
    """A layer that writes the content of a response to the file that is given as `to`.

    It must be inside of `retry`. Then a request is also made again if its body breaks off.
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
    """Copy all files, print what happened, and return whether all went well."""
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
    # The errors of the target do not matter, because it may not be there yet.
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
    # TLS protects a body on its way, so it is streamed from the disk to S3 unsigned. Without TLS
    # it is signed, and for that it is read to its end before it is sent.
    endpoint = (args.endpoint_url or f'https://s3.{args.region}.amazonaws.com').rstrip('/')
    request = signed(
        request, get_credentials, 's3', args.region,
        body_hash='UNSIGNED-PAYLOAD' if endpoint.lower().startswith('https:') else None)
    # Every request here has the same effect if it is sent twice.
    request = retry(
        to_file(request), ((HttpConnectionError, (0, 1, 2)), (HttpDataError, (0, 1, 2))),
        code_intervals=[(code, (1, 2, 4)) for code in (b'429', b'500', b'502', b'503')],
        jitter=0.5)
    try:
        return await copy_all(request, endpoint, args)
    finally:
        await close()


def place(text):
    """A Path for a folder, or a pair of a bucket and the folder in it."""
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
