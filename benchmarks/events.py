"""Measures how many server-sent events are read in a second of CPU, beside other readers.

    python benchmarks/events.py
    python benchmarks/events.py --quick
    python benchmarks/events.py --rounds 9

decoder   bytes in, events out, without any connection: `Parser` of lowhaio-sse, the decoder of the
          SDK of OpenAI, and httpx-sse and httpx2 over a response that is in memory
server    a response from a server of this machine, to the last event: lowhaio with `events` and
          with `events_of`, httpx-sse over httpx, and httpx2

An event is a part of an answer of a language model, of some 200 bytes. It comes in a chunk of its
own, as it does while a model thinks, or 64 KiB of them come at once. From the server they come as
chunks of the chunked coding, in writes of one event or of 64 KiB.

All of this is one process, and the server runs in another one. Each measurement takes the CPU time
of the process. The readers take turns, round by round, and medians are shown, with the ratio to
the best of the others. Only numbers of one run are comparable. Needs httpx, httpx2, httpx-sse and
openai.
"""
import argparse
import asyncio
import contextlib
import gc
import json
import multiprocessing
import platform
import socket
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), *(str(ROOT / 'layers' / name) for name in ('sse', 'retry'))]

import httpx  # noqa: E402
import httpx2  # noqa: E402
import httpx_sse  # noqa: E402
from lowhaio_sse import Parser, events, events_of  # noqa: E402
from openai._streaming import SSEDecoder  # noqa: E402

from lowhaio import Pool  # noqa: E402

EVENT = b'data: ' + json.dumps({
    'id': 'chatcmpl-0123456789', 'object': 'chat.completion.chunk', 'created': 1800000000,
    'model': 'a-model', 'choices': [{
        'index': 0, 'delta': {'content': ' word'}, 'finish_reason': None}]}).encode() + b'\n\n'
MANY = 65536 // len(EVENT)
SHAPES = {'each in a chunk': EVENT, '64 KiB at once': EVENT * MANY}
FIELDS = {'content-type': 'text/event-stream'}
HEAD = b'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n'


# ---------------------------------------------------------------------------------- decoders

def by_parser(chunks):
    parser = Parser()
    return sum(1 for chunk in chunks for _ in parser.feed(chunk))


def by_openai(chunks):
    return sum(1 for _ in SSEDecoder().iter_bytes(iter(chunks)))


def by_httpx_sse(chunks):
    return sum(1 for _ in httpx_sse.EventSource(httpx.Response(
        200, headers=FIELDS, content=iter(chunks), request=httpx.Request('GET', 'http://a/'))
    ).iter_sse())


def by_httpx2(chunks):
    return sum(1 for _ in httpx2.EventSource(httpx2.Response(
        200, headers=FIELDS, content=iter(chunks), request=httpx2.Request('GET', 'http://a/'))))


DECODERS = {'lowhaio-sse, Parser': by_parser, 'openai': by_openai, 'httpx-sse': by_httpx_sse,
            'httpx2': by_httpx2}


# ------------------------------------------------------------------------------ over a socket

async def with_events(url):
    request, close = Pool()
    async with events(request, url, reconnects=False) as stream:
        count = sum([1 async for _ in stream])
    await close()
    return count


async def with_events_of(url):
    request, close = Pool()
    _, _, body = await request(b'GET', url)
    count = sum([1 async for _ in events_of(body)])
    await close()
    return count


async def with_httpx_sse(url):
    async with httpx.AsyncClient() as client:
        async with httpx_sse.aconnect_sse(client, 'GET', url) as source:
            return sum([1 async for _ in source.aiter_sse()])


async def with_httpx2(url):
    async with httpx2.AsyncClient() as client, client.sse(url) as source:
        return sum([1 async for _ in source])


CLIENTS = {'lowhaio-sse, events': with_events, 'lowhaio-sse, events_of': with_events_of,
           'httpx-sse': with_httpx_sse, 'httpx2': with_httpx2}


def serve(sock, count):
    """Answer each connection with so many events, in the shape that is the target."""
    while True:
        accepted, _ = sock.accept()
        with accepted, contextlib.suppress(OSError):
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            target = accepted.recv(65536).split(b' ')[1]
            content = list(SHAPES.values())[int(target[1:])]
            chunk = b'%x\r\n%b\r\n' % (len(content), content)
            accepted.sendall(HEAD)
            for _ in range(count // (len(content) // len(EVENT))):
                accepted.sendall(chunk)
            accepted.sendall(b'0\r\n\r\n')
            accepted.recv(1)


@contextlib.contextmanager
def server(count):
    with socket.create_server(('127.0.0.1', 0)) as sock:
        process = multiprocessing.get_context('fork').Process(
            target=serve, args=(sock, count), daemon=True)
        process.start()
        try:
            yield f'http://127.0.0.1:{sock.getsockname()[1]}/'
        finally:
            process.terminate()
            process.join()


# ----------------------------------------------------------------------------------- measuring

def measured(function, *args):
    """Events of a second of CPU."""
    gc.collect()
    began = time.process_time()
    count = function(*args)
    return count / (time.process_time() - began), count


def rows(rounds, count):
    """The name of each row, and the events of a second by reader."""
    count -= count % MANY
    for shape, content in SHAPES.items():
        chunks = [content] * (count // (len(content) // len(EVENT)))
        yield f'decoder, {shape}', medians(
            {name: (decode, chunks) for name, decode in DECODERS.items()}, rounds, count)
    with server(count) as url:
        for number, shape in enumerate(SHAPES):
            yield f'server, {shape}', medians(
                {name: (lambda make: asyncio.run(make(f'{url}{number}')), client)  # noqa: B023
                 for name, client in CLIENTS.items()}, rounds, count)


def medians(readers, rounds, count):
    found = {name: [] for name in readers}
    for _ in range(rounds):
        for name, (function, argument) in readers.items():
            rate, read = measured(function, argument)
            assert read == count, f'{name} has read {read} events of {count}'
            found[name].append(rate)
    return {name: statistics.median(rates) for name, rates in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--quick', action='store_true', help='only shows that everything works')
    args = parser.parse_args()
    print(f'Events of {len(EVENT)} bytes, in thousands for each second of CPU, '
          f'CPython {platform.python_version()}\n')
    print('| | reader | thousands | times the best of the others |\n| --- | --- | --- | --- |')
    for row, rates in rows(1 if args.quick else args.rounds, 2_000 if args.quick else 20_000):
        best = max(rate for name, rate in rates.items() if not name.startswith('lowhaio'))
        for name, rate in rates.items():
            print(f'| {row} | {name} | {rate / 1000:.0f} | {rate / best:.2f} |', flush=True)


if __name__ == '__main__':
    main()
