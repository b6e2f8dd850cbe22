"""Searches for a byte that is lost, doubled or out of order while both halves go on.

    python fuzz/both_ways.py --seed 1 --examples 1000
    python fuzz/both_ways.py --seed 1 --minutes 60 --loop uvloop
    python fuzz/both_ways.py --schedule 1.57

A schedule is drawn at random from its name, which is a seed and a number. The caller's generator
and reader, and the reading and writing of the server, go on beside each other, in pieces of 1 byte
to some 300 KiB, with pauses. The server answers after any part of the request, with an echo of it
or content of its own. It ends either half early, or the connection. Or it switches protocols, and
a task reads while another one sends; the reading may be cancelled again and again.

Every byte arrives once and in order. What comes only in part, because an end was early, is the
beginning of what was sent. Both halves end, and the generator has ended by then. The connection is
reused exactly when it may be. Nothing is left behind. Exits with 1 if a promise was not kept.
"""

import argparse
import asyncio
import collections
import contextlib
import gc
import itertools
import math
import random
import socket
import ssl
import sys
import time
import traceback
import warnings

from scripted import (
    LOOPS,
    TURN,
    Broken,
    Gone,
    Server,
    Watch,
    answering,
    check,
    ok,
    prompt,
    run_case,
    server_context,
    together,
    turning,
)

from lowhaio import HttpError, Pool
from tests.harness import trusting, turns

COUNTS = collections.Counter()

# Seconds of the loop's clock that no schedule takes.
NEVER = 1_000_000

MAX_LENGTH = 300 * 1024
MAX_PIECES = 120  # of a stream, but for its last one

TRANSPORTS = ('tcp', 'unix')
VERSIONS = {'plain': None, 'tls': None, 'tls-1.2': ssl.TLSVersion.TLSv1_2}

# How the server goes on when it has said all.
AFTER_BOTH = 'ends after both halves'
AT_ONCE = 'ends the connection at once'
SHUTS = 'ends its own half, and reads on'


class Tempo:
    """How one of the four goes on: the sizes of its pieces, and its pauses in turns."""

    def __init__(self, chance):
        self.chance = random.Random(chance.random())
        self.often = chance.choice((0, 0, 0.1, 0.5, 0.9))
        self.longest = chance.choice((1, 4, 20))
        self.largest = chance.choice((3, 10, 14, 16, 19))

    def pause(self):
        return self.chance.randint(1, self.longest) if self.chance.random() < self.often else 0

    def size(self):
        return int(2 ** self.chance.uniform(0, self.largest))

    def pieces(self, data):
        start = 0
        for _ in range(MAX_PIECES):
            if start >= len(data):
                return
            size = self.size()
            yield data[start:start + size]
            start += size
        if start < len(data):
            yield data[start:]


def length_of(chance):
    return min(int(2 ** chance.uniform(0, 18.3)), MAX_LENGTH)


def in_chunks(data, tempo):
    return b''.join(b'%x\r\n%b\r\n' % (len(piece), piece) for piece in tempo.pieces(data)) + \
        b'0\r\n\r\n'


def compare(what, got, expected, is_whole=True):
    if got == expected or not is_whole and expected.startswith(got):
        return
    differs_at = next((index for index, pair in enumerate(zip(got, expected, strict=False))
                       if pair[0] != pair[1]), min(len(got), len(expected)))
    raise Broken(f'{what}: {len(got)} bytes of {len(expected)}, which differ from byte '
                 f'{differs_at} on')


class Schedule:
    """Draws what happens. Each value is drawn in any case, so that one can be changed alone."""

    def __init__(self, name, loop_name=None, transport=None, version=None, kind=None):
        chance = random.Random(name)
        self.name = name
        drawn = chance.choice(list(LOOPS))
        self.loop_name = loop_name or drawn
        drawn = chance.choice(TRANSPORTS)
        self.transport = transport or drawn
        drawn = chance.choice(list(VERSIONS))
        self.version = version or drawn
        drawn = chance.choice(('http', 'http', 'switched'))
        self.is_switched = (kind or drawn) == 'switched'
        # The sizes of the kernel's buffers, of the client's end and of the server's.
        self.buffers = [chance.choice((None, None, 2048, 16384, 65536)) for _ in range(2)]
        self.recv_bufsize = chance.choice((1, 100, 131072, 131072, 131072))
        # The request
        self.is_coded = chance.random() < 0.5
        tempo = Tempo(chance)
        content = chance.randbytes(length_of(chance))
        self.request = in_chunks(content, tempo) if self.is_coded else content
        self.generator = Tempo(chance)
        self.waits = chance.choice(('', '', 'for the response', 'for all of the echo'))
        self.is_polling = chance.random() < 0.5
        self.kind_of_chunk = chance.choice((bytes, bytes, bytearray, memoryview))
        self.cleanup = chance.choice((0, 0, 2))
        # The response
        self.is_echo = chance.random() < 0.5
        self.framing = chance.choice(('length', 'length', 'chunked', 'chunked', 'end'))
        self.is_old = chance.random() < 0.1
        self.is_closing = chance.random() < 0.25
        self.after = chance.choice((AFTER_BOTH, AFTER_BOTH, AT_ONCE, SHUTS))
        self.surplus = chance.choice((b'',) * 5 + (b'x', ok(b'forged')))
        self.interims = chance.choice((b'',) * 3 + (b'HTTP/1.1 103 E\r\n\r\n',))
        self.head_after = chance.choice(
            (0, 0, 1, chance.randrange(len(self.request) + 1), len(self.request)))
        self.own_content = chance.randbytes(length_of(chance))
        self.hearing, self.saying = Tempo(chance), Tempo(chance)
        # The client's reader
        self.reading = Tempo(chance)
        self.cancels = chance.choice((0, 0, 0.2, 0.8))
        self.client_closes = chance.random() < 0.5
        # After 101
        self.sent_on = chance.randbytes(length_of(chance))
        self.settle()

    def settle(self):
        """Make of the values something that can go on to its end."""
        if self.is_switched:
            # The request has a content, too, but a short one.
            if self.is_coded:
                self.request = b'1\r\nx\r\n0\r\n\r\n'
            else:
                self.request = self.request[:10]
            self.head_after = min(self.head_after, len(self.request))
            self.surplus = b''
            self.framing = 'switched'
        if self.is_old and self.framing == 'chunked':
            self.framing = 'end'
        self.is_last = self.is_old or self.is_closing or self.framing in ('end', 'switched')
        if not self.is_last:
            self.after = AFTER_BOTH
        elif self.after is AFTER_BOTH and self.framing == 'end' and not self.is_echo:
            # Such a content ends with the connection.
            self.after = SHUTS
        if self.is_tls and self.after is SHUTS:
            self.after = AT_ONCE
        self.expected = self.own_content
        if self.is_echo:
            self.expected = self.sent_on if self.is_switched else self.request
        if not self.is_switched:
            self.waits = self.waits if self.is_echo or 'echo' not in self.waits else ''
        elif not self.is_echo:
            self.waits = ''
        if self.framing in ('end', 'switched'):
            self.surplus = b''
        # Not so few bytes that it would take too many turns.
        self.recv_bufsize = max(self.recv_bufsize, len(self.expected) // 1000)

    @property
    def is_tls(self):
        return self.version != 'plain'

    def __repr__(self):
        what = [self.loop_name, self.transport, self.version,
                'chunked' if self.is_coded else 'length', f'{len(self.request)} bytes',
                f'response after {self.head_after}', self.framing,
                'echo' if self.is_echo else 'own content', f'{len(self.expected)} bytes',
                self.after]
        if self.is_last:
            what.append('last')
        if self.surplus:
            what.append(f'and then {len(self.surplus)} more')
        if self.waits:
            what.append(f'waits {self.waits}')
        return ', '.join(what)


class Case:
    """Both ends of a schedule."""

    def __init__(self, schedule):
        self.schedule = schedule
        self.watch = Watch()
        # What the server has heard of the stream that comes to it, and what the caller has given
        # to it, and got.
        self.heard = bytearray()
        self.given = bytearray()
        self.received = bytearray()
        self.has_said_all = self.has_heard_all = False
        self.is_open = False

    async def run(self, loop):
        schedule = self.schedule
        self.loop = loop
        context = server_context(VERSIONS[schedule.version]) if schedule.is_tls else None
        self.server = Server(answering({b'/': self.serve}), context)
        self.has_response = asyncio.Event()
        options = {'get_sock': self.get_sock} if schedule.transport == 'tcp' else \
            {'get_connection': self.get_connection}
        request, close = Pool(
            max_connections=1, keep_alive_timeout=NEVER, socket_timeout=NEVER,
            recv_bufsize=schedule.recv_bufsize, get_ssl_context=trusting, **options)
        with contextlib.closing(self.server), turning(loop, self.step):
            try:
                await (self.switch if schedule.is_switched else self.exchange)(request)
                await self.check_next(request)
                await close()
                await turns(3)
            except asyncio.CancelledError:
                self.watch.check()
                raise

    def step(self):
        self.loop.check_registered()
        self.watch.step()
        self.server.step()
        self.loop.pass_time()

    # Sockets

    def get_sock(self, family):
        return self.with_buffer(prompt(socket.socket(family)), 0)

    async def get_connection(self, scheme, host, port):
        client_end, server_end = socket.socketpair()
        client_end.setblocking(False)
        self.server.adopt(self.with_buffer(server_end, 1))
        return self.with_buffer(client_end, 0)

    def with_buffer(self, sock, end):
        size = self.schedule.buffers[end]
        if size is not None:
            if sock.family != socket.AF_UNIX:
                # A smaller one makes the kernel wait for its delayed acknowledgements.
                size = max(size, 32768)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
        return sock

    @property
    def url(self):
        return f'http{"s" if self.schedule.is_tls else ""}://127.0.0.1:{self.server.port}/'

    # The server

    def serve(self, peer, head):
        schedule = self.schedule
        if self.schedule.transport == 'tcp':
            self.with_buffer(peer.sock, 1)
        if schedule.is_switched:
            yield from self.say_switched(peer)
        else:
            yield from together(self.hear(peer, schedule.request), self.say(peer))
        if schedule.is_last:
            if schedule.client_closes and schedule.is_switched:
                yield from self.wait_for_end(peer)
            yield from peer.end()
        peer.recv_bufsize = 65536

    def hear(self, peer, stream):
        """Read the stream, to its end."""
        tempo = self.schedule.hearing
        while len(self.heard) < len(stream):
            yield from peer.pause(tempo.pause())
            # Not so little that it would take too many turns.
            peer.recv_bufsize = max(tempo.size(), len(stream) // 2000 + 1)
            while not peer.data:
                yield from peer.receive()
            left = len(stream) - len(self.heard)
            self.heard += peer.data[:left]
            peer.data = peer.data[left:]
            yield
        self.has_heard_all = True

    def say(self, peer):
        """Answer, and end as the schedule says."""
        schedule = self.schedule
        while len(self.heard) < schedule.head_after:
            yield
        yield from peer.send(*filter(None, (schedule.interims, self.head())), pauses=0)
        yield from self.say_content(peer, schedule.request)
        yield from self.end(peer)

    def head(self):
        schedule = self.schedule
        fields = b''
        if schedule.framing == 'length':
            fields += b'content-length: %d\r\n' % len(schedule.expected)
        elif schedule.framing == 'chunked':
            fields += b'transfer-encoding: chunked\r\n'
        if schedule.is_closing:
            fields += b'connection: close\r\n'
        return b'HTTP/1.%d 200 OK\r\n%b\r\n' % (not schedule.is_old, fields)

    def say_content(self, peer, echoed):
        schedule = self.schedule
        said = 0
        if schedule.is_echo:
            while said < len(echoed):
                while said == len(self.heard):
                    yield
                size = max(schedule.saying.size(), len(echoed) // 500 + 1)
                piece = bytes(self.heard[said:said + size])
                said += len(piece)
                yield from self.say_piece(peer, piece, said == len(echoed))
        else:
            for piece in schedule.saying.pieces(schedule.expected):
                said += len(piece)
                yield from self.say_piece(peer, piece, said == len(schedule.expected))

    def say_piece(self, peer, piece, is_last):
        schedule = self.schedule
        if schedule.framing == 'chunked':
            piece = b'%x\r\n%b\r\n' % (len(piece), piece)
            if is_last:
                piece += b'0\r\n\r\n'
        if is_last:
            # More that comes later may come after another request.
            piece += schedule.surplus
        yield from peer.send(piece, pauses=0)
        yield from peer.pause(schedule.saying.pause())

    def end(self, peer):
        self.has_said_all = True
        if self.schedule.after is AT_ONCE:
            yield from peer.end()
        elif self.schedule.after is SHUTS:
            with contextlib.suppress(OSError):
                peer.sock.shutdown(socket.SHUT_WR)

    def say_switched(self, peer):
        schedule = self.schedule
        yield from peer.read(schedule.head_after)
        yield from peer.send(
            b'HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n', pauses=0)
        yield from peer.read(len(schedule.request) - schedule.head_after)
        yield from together(
            self.hear(peer, schedule.sent_on), self.say_switched_content(peer))

    def say_switched_content(self, peer):
        yield from self.say_content(peer, self.schedule.sent_on)
        if not self.schedule.client_closes:
            yield from self.end(peer)

    def wait_for_end(self, peer):
        try:
            yield from peer.receive()
        except Gone:
            self.has_ended = True
            raise
        raise Broken('more came than was sent')

    # The client

    async def exchange(self, request):
        schedule = self.schedule
        fields = (b'transfer-encoding', b'chunked') if schedule.is_coded else \
            (b'content-length', b'%d' % len(schedule.request))
        is_cut = schedule.after is not AFTER_BOTH
        error = None
        try:
            code, _, body = await request(b'POST', self.url, headers=[fields], body=self.chunks)
            check(code == b'200', 'got', code)
            self.has_response.set()
            COUNTS['answered while sending'] += not body.request_sent
            await self.read(body)
        except HttpError as caught:
            # If the server closes before it has read all, its system may reset the connection, and
            # forget what it has not sent yet. Nothing of that is known to the peer of a pair.
            # What comes before a TLS write has succeeded is not taken for a response.
            is_lost = schedule.framing == 'end' or (
                schedule.transport == 'tcp' or schedule.is_tls and not self.received) and not (
                schedule.framing == 'length' and self.received == schedule.expected)
            if not (schedule.after is AT_ONCE and self.has_said_all and is_lost):
                raise Broken('failed') from caught
            error = caught
            COUNTS['failed by an end'] += 1
        check(not self.is_open, 'the generator has not ended')
        await turns(3)
        compare('the response', self.received, schedule.expected, is_whole=error is None)
        if error is None:
            check(is_cut or body.request_sent, 'request_sent is False')
            if body.request_sent:
                compare('the generator', self.given, schedule.request)
        # A client that closes a connection with unread bytes resets it, so the rest may be lost.
        is_heard = not is_cut and not schedule.surplus
        while is_heard and not self.has_heard_all:
            await asyncio.sleep(0)
        compare('the request', self.heard, schedule.request, is_heard)
        check(self.given.startswith(self.heard), 'the server got what was not yielded')

    async def chunks(self):
        schedule = self.schedule
        self.is_open = True
        try:
            for piece in schedule.generator.pieces(schedule.request):
                await turns(schedule.generator.pause())
                if len(self.given) >= schedule.head_after:
                    if schedule.waits:
                        await self.wait_for(self.has_response.is_set)
                    if schedule.waits == 'for all of the echo':
                        await self.wait_for(lambda: len(self.received) >= len(self.given))
                self.given += piece
                yield schedule.kind_of_chunk(piece)
                if len(piece) % 7 == 0:
                    yield b''
        finally:
            try:
                await turns(schedule.cleanup)
            finally:
                self.is_open = False

    async def wait_for(self, is_true):
        while not is_true():
            if self.schedule.is_polling:
                await asyncio.sleep(0)
            else:
                await asyncio.sleep(2 * TURN)

    async def read(self, body):
        schedule = self.schedule
        while True:
            await turns(schedule.reading.pause())
            try:
                self.received += await self.next_chunk(body)
            except StopAsyncIteration:
                return
            if len(self.received) >= len(schedule.expected) and schedule.is_switched and \
                    schedule.client_closes:
                return

    async def next_chunk(self, body):
        """The next one. After 101, the reading may be cancelled before."""
        schedule = self.schedule
        while schedule.is_switched and schedule.reading.chance.random() < schedule.cancels:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(schedule.reading.chance.randint(0, 4) * TURN):
                    return await anext(body)
            COUNTS['cancelled reads'] += 1
        return await anext(body)

    async def switch(self, request):
        schedule = self.schedule
        fields = [(b'connection', b'upgrade'), (b'upgrade', b'x'),
                  (b'transfer-encoding', b'chunked') if schedule.is_coded else
                  (b'content-length', b'%d' % len(schedule.request))]
        waits, schedule.waits = schedule.waits, ''
        code, _, body = await request(b'POST', self.url, headers=fields, body=self.chunks)
        schedule.waits = waits
        check(code == b'101', 'got', code)
        check(not self.is_open, 'the generator has not ended')
        check(body.request_sent, 'request_sent is False')
        COUNTS['switched'] += 1
        self.given.clear()
        results = await asyncio.gather(
            self.read(body), self.send(body), return_exceptions=True)
        is_cut = not schedule.client_closes and schedule.after is not AFTER_BOTH
        for error in results:
            if error is not None and not (is_cut and isinstance(error, HttpError)):
                raise Broken('failed') from error
        compare('what was read', self.received, schedule.expected,
                is_whole=not (is_cut and results[0]))
        check(schedule.sent_on.startswith(self.heard), 'the server got what was not sent')
        await body.aclose()
        if not is_cut:
            while not self.has_heard_all or schedule.client_closes and not hasattr(
                    self, 'has_ended'):
                await asyncio.sleep(0)
            compare('what was sent', self.heard, schedule.sent_on)
        with contextlib.suppress(HttpError):
            await body.send(b'!')
            raise Broken('sent after the end')

    async def send(self, body):
        schedule = self.schedule
        for piece in schedule.generator.pieces(schedule.sent_on):
            await turns(schedule.generator.pause())
            if schedule.waits == 'for all of the echo':
                await self.wait_for(lambda: len(self.received) >= len(self.given))
            self.given += piece
            await body.send(schedule.kind_of_chunk(piece))

    async def check_next(self, request):
        schedule = self.schedule
        _, _, body = await request(b'GET', self.url + 'next')
        answer = b''.join([chunk async for chunk in body])
        check(answer == b'/next', 'the next request got', answer)
        may_reuse = not schedule.is_last and not schedule.surplus
        check((len(self.server.peers) == 1) == may_reuse,
              'reused' if may_reuse is False else 'not reused')
        check(asyncio.current_task().cancelling() == 0, 'cancelling()')


# ----------------------------------------------------------------------------------- command

def run(name, args):
    """Run a schedule. Returns whether its promises were kept."""
    schedule = Schedule(name, args.loop, args.transport, args.version, args.kind)
    COUNTS['schedules'] += 1
    case = Case(schedule)
    try:
        run_case(schedule.loop_name, case.run)
    except Exception as error:
        report(schedule, case, args, error)
        return False
    finally:
        COUNTS['bytes'] += len(case.heard) + len(case.received)
    return True


def report(schedule, case, args, error):
    print(f'BROKEN in schedule {schedule.name}: {error}\n  {schedule}')
    print(f'  {len(case.given)} bytes were given, {len(case.heard)} heard, '
          f'{len(case.received)} received')
    while error is not None:
        if not isinstance(error, Broken):
            print(''.join(traceback.format_exception(error, chain=False, limit=-5)))
        error = error.__cause__
    options = ''.join(f' --{name} {value}' for name in ('loop', 'transport', 'version', 'kind')
                      if (value := getattr(args, name)))
    print(f'repeat it: python fuzz/both_ways.py --schedule {schedule.name}{options}', flush=True)


def parsed_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--examples', type=int, default=math.inf,
                        help='how many schedules; 1000, unless there are --minutes')
    parser.add_argument('--minutes', type=float, default=math.inf)
    parser.add_argument('--schedule', metavar='SEED.NUMBER', help='only this one')
    parser.add_argument('--loop', choices=LOOPS, help='not one at random; as the next three')
    parser.add_argument('--transport', choices=TRANSPORTS)
    parser.add_argument('--version', choices=VERSIONS)
    parser.add_argument('--kind', choices=('http', 'switched'))
    parser.add_argument('--go-on', action='store_true', help='after a broken promise, too')
    args = parser.parse_args()
    if args.examples == args.minutes == math.inf:
        args.examples = 1000
    return args


def names(args):
    if args.schedule:
        yield args.schedule
        return
    end = time.monotonic() + args.minutes * 60
    for number in itertools.count():
        if number >= args.examples or time.monotonic() >= end:
            return
        yield f'{args.seed}.{number}'


def main():
    args = parsed_arguments()
    warnings.simplefilter('error')
    for version in VERSIONS.values():
        server_context(version)
    # From here on, each collection looks only at new objects.
    gc.collect()
    gc.freeze()
    broken = 0
    for name in names(args):
        broken += not run(name, args)
        if broken and not args.go_on:
            break
    what = ', '.join(f'{COUNTS[name]} {name}' for name in (
        'schedules', 'answered while sending', 'switched', 'cancelled reads', 'failed by an end'))
    print(f'seed {args.seed}: {what}, {COUNTS["bytes"] / 1e6:.0f} MB: '
          f'{broken or "no"} promise{"s" if broken > 1 else ""} broken')
    sys.exit(bool(broken))


if __name__ == '__main__':
    main()
