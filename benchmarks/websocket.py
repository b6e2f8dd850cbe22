"""Measures clients of WebSockets side by side: messages per second of CPU, there and back.

    python benchmarks/websocket.py               compares the clients
    python benchmarks/websocket.py --libraries   compares what the layer could be built on

A server in a process of its own sends back each message. Each measurement is made in a fresh
process, which counts the CPU time of nothing but the client, system calls included. A message of
bytes is sent, and the next one when it has come back, over one connection or over 32 at once. The
rounds take turns, and the medians count. `--clients` and `--only` choose some, `--rounds` and
`--quick` change how long it takes, and `--uvloop` changes the loop.

The floor is a bare loop that sends a frame that was made before, and counts the bytes that come.
picows calls a function for each frame; all others are awaited. Compression is off for all.
"""
import argparse
import asyncio
import base64
import gc
import hashlib
import importlib
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'layers' / 'websocket')]

SIZES = {'32 B': 32, '1 KiB': 1024, '64 KiB': 64 * 1024}
CONCURRENCIES = (1, 32)
# Bytes that all messages of a measurement have together, at most, and how many there are, at most.
VOLUME = 256 * 1024 * 1024
MESSAGES = 20_000
LIMIT = 16 * 1024 * 1024


# ------------------------------------------------------------------------------- the server


class Echo(asyncio.Protocol):
    """Sends back whole frames of bytes. It knows no more of RFC 6455 than the clients need."""

    def connection_made(self, transport):
        self.transport = transport
        self.data = b''
        self.is_open = False

    def data_received(self, data):
        data = self.data + data if self.data else data
        if not self.is_open:
            head, end, data = data.partition(b'\r\n\r\n')
            if not end:
                self.data = head
                return
            self.answer(head)
        while frame := self.frame(data):
            payload, data = frame
            if payload is None:
                return
            self.transport.write(payload)
        self.data = data

    def answer(self, head):
        key = next(line.partition(b':')[2].strip() for line in head.split(b'\r\n')
                   if line.lower().startswith(b'sec-websocket-key:'))
        accept = base64.b64encode(
            hashlib.sha1(key + b'258EAFA5-E914-47DA-95CA-C5AB0DC85B11').digest())
        self.transport.write(
            b'HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n'
            b'sec-websocket-accept: ' + accept + b'\r\n\r\n')
        self.is_open = True

    def frame(self, data):
        if len(data) < 6:
            return None
        length, begin = data[1] & 127, 2
        if length > 125:
            begin = 4 if length == 126 else 10
            length = int.from_bytes(data[2:begin], 'big')
        end = begin + 4 + length
        if len(data) < end:
            return None
        payload = apply_mask(data[begin + 4:end], data[begin:begin + 4])
        if data[0] & 15 == 8:
            self.transport.write(bytes((data[0], length)) + payload)
            self.transport.close()
            return None, b''
        head = bytes((data[0], data[1] & 127)) + data[2:begin]
        return head + payload, data[end:]


def apply_mask(data, mask):
    from websockets.frames import apply_mask
    globals()['apply_mask'] = apply_mask
    return apply_mask(data, mask)


async def serve():
    server = await asyncio.get_running_loop().create_server(Echo, '127.0.0.1', 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


# ------------------------------------------------------------------------------ the clients
#
# Each is called with the port, a message, the number of messages of a connection, and a function
# that waits until all connections are open. It returns how many bytes came back.


async def floor(port, message, number, ready):
    loop = asyncio.get_running_loop()
    sock = socket.create_connection(('127.0.0.1', port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setblocking(False)
    await loop.sock_sendall(
        sock, b'GET / HTTP/1.1\r\nhost: a\r\nsec-websocket-key: AAAA\r\n\r\n')
    await loop.sock_recv(sock, 65536)
    length = len(message)
    size = b'' if length < 126 else length.to_bytes(2 if length < 65536 else 8, 'big')
    frame = bytes((130, 128 | (length if length < 126 else 126 if length < 65536 else 127)))
    frame += size + bytes(4) + message
    expected = len(frame) - 4
    waiter, received = None, 0

    def on_readable():
        nonlocal received
        received += len(sock.recv(128 * 1024))
        if received >= expected and waiter is not None and not waiter.done():
            waiter.set_result(None)

    loop.add_reader(sock, on_readable)
    await ready()
    for _ in range(number):
        waiter, received = loop.create_future(), 0
        data = frame
        while data:
            try:
                data = data[sock.send(data):]
            except BlockingIOError:
                await asyncio.sleep(0)
        await waiter
    loop.remove_reader(sock)
    sock.close()
    return number * length


async def lowhaio(port, message, number, ready):
    from lowhaio import Pool
    from lowhaio_websocket import websocket

    request, close = Pool()
    total = 0
    async with websocket(request, f'ws://127.0.0.1:{port}/', max_message=LIMIT) as ws:
        await ready()
        for _ in range(number):
            await ws.send(message)
            total += len(await ws.receive())
    await close()
    return total


async def websockets(port, message, number, ready):
    from websockets.asyncio.client import connect

    total = 0
    async with connect(f'ws://127.0.0.1:{port}/', compression=None, max_size=LIMIT,
                       ping_interval=None, proxy=None) as ws:
        await ready()
        for _ in range(number):
            await ws.send(message)
            total += len(await ws.recv())
    return total


async def aiohttp(port, message, number, ready):
    from aiohttp import ClientSession

    total = 0
    async with ClientSession() as session:
        async with session.ws_connect(f'http://127.0.0.1:{port}/', max_msg_size=LIMIT) as ws:
            await ready()
            for _ in range(number):
                await ws.send_bytes(message)
                total += len(await ws.receive_bytes())
    return total


async def picows(port, message, number, ready):
    from picows import WSCloseCode, WSListener, WSMsgType, ws_connect

    ended = asyncio.get_running_loop().create_future()

    class Listener(WSListener):
        total = 0
        left = number

        def on_ws_frame(self, transport, frame):
            if frame.msg_type != WSMsgType.BINARY:
                return
            self.total += len(frame.get_payload_as_bytes())
            self.left -= 1
            if self.left:
                transport.send(WSMsgType.BINARY, message)
            else:
                ended.set_result(None)

    transport, listener = await ws_connect(
        Listener, f'ws://127.0.0.1:{port}/', max_frame_size=LIMIT)
    await ready()
    transport.send(WSMsgType.BINARY, message)
    await ended
    transport.send_close(WSCloseCode.OK)
    await transport.wait_disconnected()
    return listener.total


async def niquests(port, message, number, ready):
    from niquests import AsyncSession

    total = 0
    async with AsyncSession() as session:
        response = await session.get(f'ws://127.0.0.1:{port}/')
        ws = response.extension
        await ready()
        for _ in range(number):
            await ws.send_payload(message)
            total += len(await ws.next_payload())
        await ws.close()
    return total


WITHOUT_C = {'websockets.speedups': None}
CLIENTS = {
    'floor': (floor, {}),
    'lowhaio': (lowhaio, {}),
    'lowhaio, no C': (lowhaio, WITHOUT_C),
    'websockets': (websockets, {}),
    'websockets, no C': (websockets, WITHOUT_C),
    'aiohttp': (aiohttp, {}),
    'aiohttp, no C': (aiohttp, {'AIOHTTP_NO_EXTENSIONS': '1'}),
    'picows': (picows, {}),
    'niquests': (niquests, {}),
}


# ------------------------------------------------------------------------------ measurements


async def measure(name, port, size, concurrency, number):
    client, without = CLIENTS[name]
    for key, value in without.items():
        if value is None:
            sys.modules[key] = None
        else:
            os.environ[key] = value
    message = os.urandom(size)
    start = 0.0
    opened = asyncio.Event()
    waiting = 0

    async def ready():
        nonlocal waiting, start
        waiting += 1
        if waiting == concurrency:
            gc.collect()
            gc.freeze()
            start = time.process_time()
            opened.set()
        await opened.wait()

    async def run():
        total = await client(port, message, number // concurrency, ready)
        if total != number // concurrency * size:
            raise RuntimeError(f'{total} bytes came back')
        return time.process_time()

    # First, so that imports and caches are no part of it.
    opened.set()
    waiting = -1 - concurrency
    await client(port, message, 20, ready)
    opened.clear()
    waiting = 0
    ends = await asyncio.gather(*(run() for _ in range(concurrency)))
    return number / (max(ends) - start)


def run_measurement(options, name, port, size, concurrency, number):
    job = json.dumps([name, port, size, concurrency, number])
    ended = subprocess.run(
        [sys.executable, __file__, '--measure', job, *(['--uvloop'] if options.uvloop else [])],
        capture_output=True, text=True, timeout=600, check=False)
    if ended.returncode != 0:
        return None, ended.stderr.strip().splitlines()[-1:]
    return float(ended.stdout), None


def compare(options):
    names = options.clients.split(',') if options.clients else list(CLIENTS)
    server = subprocess.Popen([sys.executable, __file__, '--serve'], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True)
    port = int(server.stdout.readline())
    try:
        print(f'{platform.python_implementation()} {platform.python_version()}, '
              f'{"uvloop" if options.uvloop else "asyncio"}, {versions()}')
        print('\nMessages per second of CPU\n')
        columns = [(label, concurrency) for concurrency in CONCURRENCIES for label in SIZES
                   if not options.only or options.only in label]
        print('| | ' + ' | '.join(
            f'{label}, {concurrency} at once' if concurrency > 1 else label
            for label, concurrency in columns) + ' |')
        print('| --- |' + ' --- |' * len(columns))
        results = {}
        for _ in range(options.rounds):
            for label, concurrency in columns:
                number = min(MESSAGES, VOLUME // SIZES[label])
                if options.quick:
                    number //= 20
                for name in names:
                    rate, failure = run_measurement(
                        options, name, port, SIZES[label], concurrency, number)
                    results.setdefault((name, label, concurrency), []).append(rate)
                    if failure is not None:
                        print(f'{name}, {label}: {failure}', file=sys.stderr)
        for name in names:
            rates = [results[name, label, concurrency] for label, concurrency in columns]
            print(f'| {name} | ' + ' | '.join(
                'failed' if None in rounds else f'{statistics.median(rounds):,.0f}'
                for rounds in rates) + ' |')
        spread = max((max(rounds) - min(rounds)) / statistics.median(rounds)
                     for rounds in results.values() if None not in rounds)
        print(f'\nMedians of {options.rounds} rounds, which differed by {spread:.0%} at most.')
    finally:
        server.stdin.close()
        server.wait()


def versions():
    from importlib.metadata import version
    found = []
    for name in 'websockets', 'aiohttp', 'picows', 'niquests', 'wsproto':
        try:
            found.append(f'{name} {version(name)}')
        except importlib.metadata.PackageNotFoundError:
            found.append(f'no {name}')
    return ', '.join(found)


# ------------------------------------------------------------------------------ the libraries


def with_websockets(compression):
    from websockets.client import ClientProtocol
    from websockets.extensions.permessage_deflate import PerMessageDeflate
    from websockets.protocol import OPEN
    from websockets.uri import parse_uri

    protocol = ClientProtocol(parse_uri('ws://a/'), state=OPEN, max_size=LIMIT)
    if compression:
        protocol.extensions = [PerMessageDeflate(False, False, 15, 15, {'memLevel': 5})]

    def send(data):
        protocol.send_binary(data)
        return b''.join(protocol.data_to_send())

    def receive(data):
        protocol.receive_data(data)
        return [event.data for event in protocol.events_received()]

    return send, receive


def with_wsproto(compression):
    from wsproto.connection import CLIENT, Connection
    from wsproto.events import BytesMessage
    from wsproto.extensions import PerMessageDeflate

    extensions = []
    if compression:
        extensions = [PerMessageDeflate()]
        extensions[0].finalize('permessage-deflate')
    protocol = Connection(CLIENT, extensions)

    def send(data):
        return protocol.send(BytesMessage(data))

    def receive(data):
        protocol.receive_data(data)
        return [b''.join(event.data for event in protocol.events())]

    return send, receive


def with_layer(compression):
    from lowhaio_websocket import Frames
    from websockets.client import ClientProtocol
    from websockets.extensions.permessage_deflate import PerMessageDeflate
    from websockets.protocol import OPEN
    from websockets.uri import parse_uri

    protocol = ClientProtocol(parse_uri('ws://a/'), state=OPEN, max_size=LIMIT)
    if compression:
        protocol.extensions = [PerMessageDeflate(False, False, 15, 15, {'memLevel': 5})]
    frames = Frames(protocol)

    def send(data):
        frames.queue_message(0x82, data)
        return frames.take_output()

    def receive(data):
        frames.feed(data)
        messages = list(frames.messages)
        frames.messages.clear()
        frames.kept = 0
        return messages

    return send, receive


LIBRARIES = {'websockets': with_websockets, 'wsproto': with_wsproto, 'the layer': with_layer}


def server_frame(data, compressed):
    length = len(data)
    size = b'' if length < 126 else length.to_bytes(2 if length < 65536 else 8, 'big')
    short = length if length < 126 else 126 if length < 65536 else 127
    return bytes((0xc2 if compressed else 0x82, short)) + size + data


def compare_libraries():
    print(f'{platform.python_implementation()} {platform.python_version()}, {versions()}')
    print('\nCPU of a message, sent and received, in µs\n')
    print('| | ' + ' | '.join(
        f'{label}{", compressed" if compression else ""}'
        for compression in (False, True) for label in SIZES) + ' |')
    print('| --- |' + ' --- |' * 2 * len(SIZES))
    for name, make in LIBRARIES.items():
        cells = []
        for compression in False, True:
            for size in SIZES.values():
                cells.append(f'{min(cpu_of(make, compression, size) for _ in range(3)):.1f}')
        print(f'| {name} | {" | ".join(cells)} |')
    print('\nMemory for the first 120 KiB of a compressed message of 256 MiB, in MiB.\n'
          'A message may have 16.\n')
    bomb = zlib.compressobj(wbits=-15)
    data = b''.join(bomb.compress(bytes(2 ** 20)) for _ in range(256))
    data = server_frame((data + bomb.flush(zlib.Z_SYNC_FLUSH))[:-4], True)
    print('| | MiB |\n| --- | --- |')
    for name, make in LIBRARIES.items():
        tracemalloc.start()
        make(True)[1](data[:120 * 1024] if name == 'wsproto' else data)
        print(f'| {name} | {tracemalloc.get_traced_memory()[1] / 2 ** 20:.1f} |')
        tracemalloc.stop()


def cpu_of(make, compression, size):
    send, receive = make(compression)
    # Half of it can be compressed, as text can.
    message = os.urandom(size // 2).hex().encode()
    compressor = zlib.compressobj(wbits=-15)
    number = min(20_000, 64 * 1024 * 1024 // size) // (8 if compression else 1)
    frames = []
    for _ in range(number):
        data = message
        if compression:
            data = (compressor.compress(message) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
        frames.append(server_frame(data, compression))
    gc.collect()
    start = time.process_time()
    for frame in frames:
        send(message)
        [received] = receive(frame)
        if len(received) != size:
            raise RuntimeError(f'{len(received)} bytes')
    return (time.process_time() - start) / number * 1e6


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--libraries', action='store_true')
    parser.add_argument('--clients', help='names, with commas between them')
    parser.add_argument('--only', help='a size of messages')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('--uvloop', action='store_true')
    parser.add_argument('--serve', action='store_true', help=argparse.SUPPRESS)
    parser.add_argument('--measure', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve())
    elif options.measure:
        kind = importlib.import_module('uvloop').new_event_loop if options.uvloop else None
        with asyncio.Runner(loop_factory=kind) as runner:
            print(runner.run(measure(*json.loads(options.measure))))
    elif options.libraries:
        compare_libraries()
    else:
        compare(options)


if __name__ == '__main__':
    main()
