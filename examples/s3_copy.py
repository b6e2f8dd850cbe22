"""Copies a folder to S3, from S3, or within S3, many files at once.

    python examples/s3_copy.py photos s3://bucket/photos
    python examples/s3_copy.py s3://bucket/photos photos
    python examples/s3_copy.py s3://bucket/photos s3://other-bucket/photos

Credentials are those of the environment, of a profile, or of the machine, as other programs find
them. A file is skipped if the target has one of the same size that is not older. Nothing is
deleted. If a file fails, that is reported, the others go on, and the exit code is 1.

Both places are listed in the order of the names, while files are copied, so that memory does not
grow with their number. s3_copy_dask.py does the same with many processes, or machines.
"""
import argparse
import asyncio
import os
import re
import stat
import sys
from pathlib import Path
from typing import NamedTuple

from lowhaio_aws_credentials import CredentialsError, from_chain
from lowhaio_s3 import Bucket, S3Error
from tqdm import tqdm

from lowhaio import HttpError, Pool

# What a file, or all of them, can fail with. A ValueError tells of a name that cannot be one in
# the target, or of a file that changes while it is read.
FAILURES = CredentialsError, HttpError, S3Error, OSError, ValueError
# How many files have been listed, and wait.
QUEUED = 1000


class File(NamedTuple):
    name: str
    size: int
    modified: float

    def is_same(self, copy):
        """Whether a file of the target need not be copied again."""
        return copy.size == self.size and copy.modified >= self.modified


class Folder:
    """A local folder. The names of files are relative to it, and have slashes."""

    def __init__(self, path):
        self.path = path

    async def files(self, on_error, below=''):
        """In the order of S3, where a slash is a character as any other."""
        names = []
        try:
            with os.scandir(self.path / below) as entries:
                names = sorted(entry.name + '/' * entry.is_dir(follow_symlinks=False)
                               for entry in entries)
        except OSError as error:
            on_error(self.path / below, error)
        for name in names:
            if name.endswith('/'):
                async for file in self.files(on_error, below + name):
                    yield file
                continue
            try:
                if file := self.file(below + name):
                    yield file
            except OSError as error:
                on_error(self.path / below / name, error)

    def file(self, name):
        """None if it is something else, such as a link to a folder."""
        status = (self.path / name).stat()
        if stat.S_ISREG(status.st_mode):
            return File(name, status.st_size, status.st_mtime)
        return None

    def path_of(self, name):
        """The path of a file. Raises if it would be outside of the folder, also by a link."""
        path = self.path / name
        if (not {'', '.', '..'}.isdisjoint(name.split('/')) or '\0' in name
                or not path.resolve().is_relative_to(self.path.resolve())):
            raise ValueError('its key is no path in the folder')
        return path


class Prefix:
    """The objects of a bucket that are in a folder. The names of files are relative to it."""

    def __init__(self, bucket, folder):
        self.bucket = bucket
        self.prefix = folder if not folder or folder.endswith('/') else folder + '/'

    async def files(self, on_error):
        async for page in self.bucket.list(self.prefix):
            for file in self.files_of(page):
                yield file

    def files_of(self, page):
        for found in page.objects:
            name = found.key.removeprefix(self.prefix)
            # Some programs make an object whose key ends with a slash for each folder.
            if name and not name.endswith('/'):
                yield File(name, found.size, found.modified.timestamp())


async def upload(folder, target, file, moved):
    await target.bucket.put(target.prefix + file.name, folder.path / file.name, on_progress=moved)


async def download(source, folder, file, moved):
    path = folder.path_of(file.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    await source.bucket.download(source.prefix + file.name, path, on_progress=moved)
    os.utime(path, (file.modified, file.modified))


async def copy(source, target, file, moved):
    """S3 copies the file itself, so that its content is not transferred."""
    await target.bucket.copy(source.prefix + file.name, target.prefix + file.name,
                             source=source.bucket)
    moved(file.size)


COPIES = {(Folder, Prefix): upload, (Prefix, Folder): download, (Prefix, Prefix): copy}


async def wanted(source, target, on_error, on_skipped):
    """The files of the source that the target lacks. Both are listed once, side by side."""
    # The errors of the target do not matter, because it may not be there yet.
    there = target.files(lambda name, error: None)
    other = await anext(there, None)
    async for file in source.files(on_error):
        while other and other.name < file.name:
            other = await anext(there, None)
        if other and other.name == file.name and file.is_same(other):
            on_skipped()
        else:
            yield file


def open_places(args):
    """The source, the target, and the coroutine function that closes their pool."""
    def opened(place):
        if isinstance(place, Path):
            return Folder(place)
        bucket, folder = place
        return Prefix(Bucket(request, bucket, credentials, args.region,
                             endpoint=args.endpoint_url), folder)

    request, close = Pool(max_connections=args.concurrency, socket_timeout=30)
    credentials = from_chain(request, profile=args.profile, region=args.region)
    return opened(args.source), opened(args.target), close


def told(error):
    return f'{type(error).__name__}: {error}'


class Summary:
    """What has happened, and a bar."""

    def __init__(self):
        self.copied = self.skipped = self.failed = self.bytes = 0
        self.bar = tqdm(total=0, unit='B', unit_scale=True, unit_divisor=1024)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.seconds = self.bar.format_dict['elapsed']
        self.bar.close()

    def on_skipped(self):
        self.skipped += 1

    def on_copied(self, files, size):
        self.copied += files
        self.bytes += size

    def on_error(self, name, error):
        self.on_failed(name, told(error))

    def on_failed(self, name, text, files=1):
        self.failed += files
        tqdm.write(f'{str(name)!r}: {text}', file=sys.stderr)

    def finish(self):
        """Print it, and return whether all went well."""
        print(f'{self.bytes / 1e6:.1f} MB in {self.seconds:.1f} s: '
              f'{self.bytes / self.seconds / 1e6:.1f} MB/s, '
              f'{self.copied / self.seconds:.0f} files/s', file=sys.stderr)
        print(f'{self.copied} copied, {self.skipped} skipped, {self.failed} failed')
        return not self.failed


async def copy_all(args):
    """Copy all files, and return whether all went well."""
    async def feed():
        async for file in wanted(source, target, summary.on_error, summary.on_skipped):
            summary.bar.total += file.size
            await queue.put(file)
        for _ in range(args.concurrency):
            await queue.put(None)

    async def work():
        while file := await queue.get():
            try:
                await copy_file(source, target, file, summary.bar.update)
                summary.on_copied(1, file.size)
            except FAILURES as error:
                summary.on_error(file.name, error)

    source, target, close = open_places(args)
    copy_file = COPIES[type(source), type(target)]
    queue = asyncio.Queue(QUEUED)
    try:
        with Summary() as summary:
            async with asyncio.TaskGroup() as group:
                for job in (feed, *[work] * args.concurrency):
                    group.create_task(job())
    except ExceptionGroup as group:
        raise group.exceptions[0] from None  # of the listing: that of a file ends nothing
    finally:
        await close()
    return summary.finish()


def place(text):
    """A Path for a folder, or a pair of a bucket and the folder in it."""
    if match := re.fullmatch('s3://([A-Za-z0-9][A-Za-z0-9._-]+)(?:/(.*))?', text, re.DOTALL):
        return match.groups('')
    if text.startswith('s3:'):
        raise argparse.ArgumentTypeError(f'{text!r} is not s3://BUCKET or s3://BUCKET/FOLDER')
    return Path(text)


def main(copy_all, description, *more):
    """Parse the arguments, copy, and exit."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=place, help='a folder, or s3://BUCKET/FOLDER')
    parser.add_argument('target', type=place, help='the same; one of the two must be in S3')
    parser.add_argument('--region', default=os.environ.get('AWS_REGION', 'us-east-1'))
    parser.add_argument('--endpoint-url', metavar='URL', default=os.environ.get(
        'AWS_ENDPOINT_URL'), help='of another server that speaks the protocol of S3')
    parser.add_argument('--profile', metavar='NAME', help='of the credentials')
    parser.add_argument('--concurrency', type=int, default=16, metavar='N',
                        help='files at once (default: 16)')
    for name, options in more:
        parser.add_argument(name, **options)
    args = parser.parse_args()
    if isinstance(args.source, Path) and isinstance(args.target, Path):
        parser.error('source or target must be s3://BUCKET or s3://BUCKET/FOLDER')
    if isinstance(args.source, Path) and not args.source.is_dir():
        parser.error(f'{args.source} is not a folder')
    if args.concurrency < 1:
        parser.error('--concurrency must be 1 or more')
    try:
        sys.exit(not asyncio.run(copy_all(args)))
    except FAILURES as error:
        sys.exit(told(error))
    except KeyboardInterrupt:
        print('Interrupted: what has been copied stays', file=sys.stderr)
        sys.exit(130)


if __name__ == '__main__':
    main(copy_all, __doc__)
