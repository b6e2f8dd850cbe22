"""Shows all notes of a JSON API, which come in pages, and adds some.

    API_TOKEN=secret python examples/api_client.py https://api.example.com/v1
    API_TOKEN=secret python examples/api_client.py https://api.example.com/v1 --add "Buy milk"

What fails is tried again up to four times if that can do no harm. So is all that the server has no
time for, which it tells by 429 or 503: it is waited for as long as it asks, or for 0.5, 1, 2 and 4
seconds. `--pause` is another first of these.

examples/with_httpx2/api_client.py is the same program with httpx2.
"""
import argparse
import asyncio
import os
import sys
from functools import partial

from lowhaio import HttpConnectionError, HttpDataError, HttpError
from lowhaio_retry import if_idempotent, retry
from lowhaio_session import Session, StatusError


def should_retry(method, error):
    return error is None or if_idempotent(method, error)


async def pages(http):
    page = 1
    while page is not None:
        response = await http.get('/notes', params={'page': page})
        document = await response.raise_for_status().json()
        yield document['notes']
        page = document['next']


async def run(url, token, pause, added):
    waits = [pause * 2 ** attempt for attempt in range(4)]
    patient = partial(
        retry, exception_intervals=[(HttpConnectionError, waits), (HttpDataError, waits)],
        code_intervals=[(b'429', waits), (b'503', waits)], should_retry=should_retry)
    async with Session(url, auth=token, timeout=60, retries=patient) as http:
        for title in added:
            response = await http.post('/notes', json={'title': title})
            print('added', (await response.raise_for_status().json())['id'])
        async for notes in pages(http):
            for note in notes:
                print(note['id'], note['title'])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('url')
    parser.add_argument('--add', metavar='TITLE', action='append', default=[])
    parser.add_argument('--pause', type=float, default=0.5, metavar='SECONDS')
    args = parser.parse_args()
    try:
        asyncio.run(run(args.url, os.environ['API_TOKEN'], args.pause, args.add))
    except (HttpError, StatusError) as error:
        sys.exit(f'{type(error).__name__}: {error}')


if __name__ == '__main__':
    main()
