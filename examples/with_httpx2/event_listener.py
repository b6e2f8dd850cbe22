"""Listens to the server-sent events of a URL for ever, as ../event_listener.py does, with httpx2.

    python examples/with_httpx2/event_listener.py https://www.example.com/events
"""
import argparse
import asyncio
import json
import os
import random
import sys
from pathlib import Path

import httpx2

FIRST_PAUSE = 3
MAX_PAUSE = 60


def log(attempt, seconds, outcome):
    print(f'Failure {attempt}, again in {seconds:.1f} seconds: {outcome!r}', file=sys.stderr)


def save(state, last_event_id):
    """Either the file has the old ID or the new one, also if the machine stops meanwhile."""
    new = state.with_name(state.name + '.new')
    new.write_text(last_event_id, encoding='utf-8')
    os.replace(new, state)


async def listen(url, state, max_silence):
    last_event_id = state.read_text(encoding='utf-8') if state and state.exists() else ''
    pause, failures = FIRST_PAUSE, 0
    timeout = httpx2.Timeout(10, read=max_silence)
    async with httpx2.AsyncClient(timeout=timeout, follow_redirects=True) as client:
        while True:
            headers = {'last-event-id': last_event_id} if last_event_id else {}
            try:
                async with client.sse(url, headers=headers) as source:
                    if source.response.status_code == 204:
                        return
                    source.response.raise_for_status()
                    async for event in source:
                        failures = 0
                        if event.retry is not None:
                            pause = event.retry / 1000
                        last_event_id = event.id or last_event_id
                        print(json.dumps({
                            'type': event.event, 'data': event.data, 'id': last_event_id}),
                            flush=True)
                        if state:
                            save(state, last_event_id)
                outcome = 'the stream has ended'
            except httpx2.HTTPStatusError as error:
                if error.response.status_code != 429 and not error.response.is_server_error:
                    raise
                outcome = error
            except httpx2.SSEError:
                raise
            except httpx2.TransportError as error:
                outcome = error
            failures += 1
            seconds = min(pause * 2 ** (failures - 1), MAX_PAUSE) * random.uniform(1, 1.5)
            log(failures, seconds, outcome)
            await asyncio.sleep(seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('url')
    parser.add_argument('--state', type=Path, help='a file for the ID of the last event')
    parser.add_argument('--max-silence', type=float, default=300, help='in seconds')
    args = parser.parse_args()
    try:
        asyncio.run(listen(args.url, args.state, args.max_silence))
    except httpx2.HTTPError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        pass


if __name__ == '__main__':
    main()
