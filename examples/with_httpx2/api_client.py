"""Shows all notes of a JSON API, which come in pages, and adds some: with httpx2.

    API_TOKEN=secret python examples/with_httpx2/api_client.py https://api.example.com/v1

It does what examples/api_client.py does.
"""
import argparse
import asyncio
import contextlib
import os
import sys

import httpx2

IDEMPOTENT = ('GET', 'HEAD', 'OPTIONS', 'PUT', 'DELETE')


class Retrying(httpx2.AsyncBaseTransport):
    def __init__(self, pause):
        self.inner = httpx2.AsyncHTTPTransport()
        self.pause = pause

    async def handle_async_request(self, request):
        for attempt in range(4):
            wait = self.pause * 2 ** attempt
            try:
                response = await self.inner.handle_async_request(request)
                # Here, so that a response that is cut off is asked for again.
                await response.aread()
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                pass  # nothing was sent
            except httpx2.TransportError:
                if request.method not in IDEMPOTENT:
                    raise
            else:
                if response.status_code not in (429, 503):
                    return response
                with contextlib.suppress(KeyError, ValueError):
                    wait = max(wait, float(response.headers['retry-after']))
            await asyncio.sleep(wait)
        return await self.inner.handle_async_request(request)

    async def aclose(self):
        await self.inner.aclose()


async def pages(http):
    page = 1
    while page is not None:
        response = await http.get('/notes', params={'page': page})
        document = response.raise_for_status().json()
        yield document['notes']
        page = document['next']


async def run(url, token, pause, added):
    async with httpx2.AsyncClient(
            base_url=url, headers={'authorization': f'Bearer {token}'}, timeout=10,
            follow_redirects=True, transport=Retrying(pause)) as http:
        async with asyncio.timeout(60):
            for title in added:
                response = await http.post('/notes', json={'title': title})
                print('added', response.raise_for_status().json()['id'])
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
    except (httpx2.HTTPError, TimeoutError) as error:
        sys.exit(f'{type(error).__name__}: {error}')


if __name__ == '__main__':
    main()
