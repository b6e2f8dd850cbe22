"""Copies a large file from a URL to a file, and goes on where the last run has ended.

    python examples/resumable_copy.py https://example.com/archive.zip archive.zip
    python examples/resumable_copy.py https://example.com/archive.zip archive.zip --sha256 9f86d0…

The file has its name only when it is whole. Until then it is archive.zip.part. If the connection
breaks, or the server is busy, it goes on after a pause; if the program is stopped, when it is
started again. If the file on the server has changed meanwhile, it begins anew.
"""
import argparse
import asyncio
import sys

from lowhaio_download import DownloadError, download
from lowhaio_redirect import redirectable
from tqdm import tqdm

from lowhaio import HttpError, Pool


async def copy(url, path, digest):
    request, close = Pool()
    try:
        with tqdm(desc=path, unit='B', unit_scale=True) as bar:
            def show(done, total):
                bar.total = total
                bar.update(done - bar.n)

            return await download(
                redirectable(request), url, path, digest=digest, on_progress=show)
    finally:
        await close()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('url')
    parser.add_argument('path')
    parser.add_argument('--sha256', metavar='HEX', help='the digest that the file must have')
    args = parser.parse_args()
    try:
        done = asyncio.run(copy(
            args.url, args.path, ('sha256', args.sha256) if args.sha256 else None))
    except (DownloadError, HttpError, OSError, ValueError) as error:
        sys.exit(f'{type(error).__name__}: {error}')
    print(f'{done.path}: {done.size} bytes, {done.resumed_from} of them from an earlier run')


if __name__ == '__main__':
    main()
