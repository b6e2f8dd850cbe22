"""Listens to the server-sent events of a URL for ever, and prints each as a line of JSON.

    python examples/event_listener.py https://www.example.com/events
    python examples/event_listener.py https://www.example.com/events --state last-event-id

It connects again when the connection is lost, when the server has no time, and when nothing has
come for so long. It goes on after the last event. With --state it does so in the next run, too:
the file has the ID of the last event that was printed. It ends when the server answers 204, or
what will not pass. Then the exit code is 1.
"""
import argparse
import asyncio
import json
import os
import sys
from pathlib import Path

from lowhaio_compression import decompressed
from lowhaio_redirect import redirectable
from lowhaio_sse import events

from lowhaio import HttpError, Pool


def log(attempt, seconds, outcome):
    what = outcome if isinstance(outcome, Exception) else outcome[0].decode()
    print(f'Failure {attempt}, again in {seconds:.1f} seconds: {what}', file=sys.stderr)


def save(state, last_event_id):
    """Either the file has the old ID or the new one, also if the machine stops meanwhile."""
    new = state.with_name(state.name + '.new')
    new.write_text(last_event_id, encoding='utf-8')
    os.replace(new, state)


async def listen(url, state, max_silence):
    last_event_id = state.read_text(encoding='utf-8') if state and state.exists() else ''
    request, close = Pool()
    request = decompressed(redirectable(request, keep=(b'last-event-id',)))
    try:
        async with events(request, url, last_event_id=last_event_id, max_silence=max_silence,
                          on_reconnect=log) as stream:
            async for event in stream:
                print(json.dumps(event._asdict()), flush=True)
                if state:
                    save(state, event.id)
    finally:
        await close()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('url')
    parser.add_argument('--state', type=Path, help='a file for the ID of the last event')
    parser.add_argument('--max-silence', type=float, default=300, help='in seconds')
    args = parser.parse_args()
    try:
        asyncio.run(listen(args.url, args.state, args.max_silence))
    except HttpError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        pass


if __name__ == '__main__':
    main()
