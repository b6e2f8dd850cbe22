"""Copies a large file from a URL to a file, and goes on where the last run has ended.

    python examples/with_httpx2/resumable_copy.py https://example.com/archive.zip archive.zip

This does with httpx2 what examples/resumable_copy.py does with lowhaio.
"""
import argparse
import asyncio
import hashlib
import json
import os
import random
import re
import sys
from pathlib import Path

import httpx2
from tqdm import tqdm

PAUSES = (1, 2, 4, 8, 16)


class DownloadError(Exception):
    pass


class Part:
    """What has come, and the URL and the etag that it belongs to."""

    def __init__(self, url, path):
        self.url = url
        self.data = Path(f'{path}.part')
        self.state = Path(f'{path}.part-state')

    def load(self):
        """How many bytes are there that can be used, and their etag."""
        try:
            state = json.loads(self.state.read_text())
            if state['url'] == self.url:
                return self.data.stat().st_size, state['etag']
        except (OSError, ValueError, KeyError):
            pass
        return 0, None

    def begin(self, etag):
        self.state.unlink(missing_ok=True)
        self.data.write_bytes(b'')
        if etag and not etag.startswith('W/'):
            self.state.write_text(json.dumps({'url': self.url, 'etag': etag}))

    def finish(self, path):
        with open(self.data, 'rb') as file:
            os.fsync(file.fileno())
        self.data.replace(path)
        self.state.unlink(missing_ok=True)


async def fetch(client, part, bar):
    """One request for what is missing. Whether all is there then."""
    start, etag = part.load()
    headers = {'accept-encoding': 'identity'}
    if start:
        # The last byte again: then the range is valid if all is there.
        start -= 1
        headers |= {'range': f'bytes={start}-', 'if-range': etag}
    async with client.stream('GET', part.url, headers=headers) as response:
        if response.status_code in (408, 429) or response.status_code >= 500:
            response.raise_for_status()
        if start and response.status_code == 206:
            match = re.fullmatch(
                rf'bytes {start}-\d+/(\d+)', response.headers.get('content-range', ''))
            if not match or response.headers.get('etag') != etag:
                part.begin(None)
                return False
            total = int(match[1])
        elif start and response.status_code in (412, 416):
            part.begin(None)
            return False
        elif response.status_code == 200 and 'content-encoding' not in response.headers:
            start = 0
            part.begin(response.headers.get('etag'))
            length = response.headers.get('content-length')
            total = None if length is None else int(length)
        else:
            raise DownloadError(f'the server answered {response.status_code}')
        bar.total = total
        bar.update(start - bar.n)
        with open(part.data, 'r+b') as file:
            file.seek(start)
            async for chunk in response.aiter_raw():
                file.write(chunk)
                bar.update(len(chunk))
    return total is None or part.data.stat().st_size == total


async def copy(url, path, digest):
    part = Part(url, path)
    resumed_from, _ = part.load()
    pauses, most = iter(PAUSES), resumed_from
    async with httpx2.AsyncClient(follow_redirects=True) as client:
        with tqdm(desc=path, unit='B', unit_scale=True) as bar:
            while True:
                failure = None
                try:
                    if await fetch(client, part, bar):
                        break
                except (httpx2.TransportError, httpx2.HTTPStatusError) as error:
                    failure = error
                there, _ = part.load()
                if there > most:
                    most, pauses = there, iter(PAUSES)
                pause = next(pauses, None)
                if pause is None:
                    raise DownloadError(f'no more of {path} comes') from failure
                await asyncio.sleep(pause * random.uniform(1, 1.5))
    if digest:
        with open(part.data, 'rb') as file:
            found = hashlib.file_digest(file, 'sha256').hexdigest()
        if found != digest:
            part.begin(None)
            raise DownloadError(f'the digest is {found}')
    size = part.data.stat().st_size
    part.finish(path)
    return size, resumed_from


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('url')
    parser.add_argument('path')
    parser.add_argument('--sha256', metavar='HEX', help='the digest that the file must have')
    args = parser.parse_args()
    try:
        size, resumed_from = asyncio.run(copy(args.url, args.path, args.sha256))
    except (DownloadError, httpx2.HTTPError, OSError) as error:
        sys.exit(f'{type(error).__name__}: {error}')
    print(f'{args.path}: {size} bytes, {resumed_from} of them from an earlier run')


if __name__ == '__main__':
    main()
