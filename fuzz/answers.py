"""Searches for a response that is given to the wrong request.

    python fuzz/answers.py --seed 1
    python fuzz/answers.py --minutes 60 --transports tls --loop uvloop

Many requests share few connections to a server that sends bytes nobody asked for, answers too
early, too late or not at all, and closes or resets when it likes. Bytes are cut anywhere. Each
response repeats the number of its request, and these promises are kept:

- a response that is returned is the whole answer that the server gave to this request;
- once bytes that nobody asked for are in the client's kernel, no other request uses their
  connection;
- the server receives whole requests, one after the other;
- in the end, every request has ended, and the pool serves a request as if nothing had happened.

The server never forges a response while a request is outstanding, because no client could tell
that from the answer. Everything happens in one thread, in an order that hypothesis chooses. So
unasked bytes never race with the next request, and a failure is shown with the fewest steps.
"""
import argparse
import asyncio
import collections
import contextlib
import fcntl
import functools
import os
import re
import select
import socket
import ssl
import struct
import sys
import time

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from strategies import Broken, check  # and the path to what follows

from lowhaio import HttpError, Pool, buffered
from tests.harness import certified, trusting, turns, uvloop

TRANSPORTS = ('unix', 'tcp', 'tls')
COUNTS = collections.Counter()


class MovableClock(asyncio.SelectorEventLoop):
    """A loop whose clock can also be moved forward."""

    offset = 0

    def time(self):
        return super().time() + self.offset


def new_loop(name):
    return MovableClock() if name == 'asyncio' else uvloop.new_event_loop()


# -------------------------------------------------------------------------------- transports

@functools.cache
def contexts():
    return trusting(), certified('name.test')


def socket_pair(transport):
    """A connection's two ends: the client's and the server's."""
    if transport != 'tcp':
        return socket.socketpair()
    with socket.create_server(('127.0.0.1', 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        return client, listener.accept()[0]


class Sent:
    """Waits until the bytes sent through a TCP socket have left, so that they have arrived.

    The other end is on the same machine.
    """

    # Tells how many bytes have not left yet. TIOCOUTQ would include those that have not been
    # acknowledged, and an acknowledgement may be late.
    SIOCOUTQNSD = 0x894B

    def __init__(self, sock):
        self.fd = sock.fileno()
        self.inode = os.fstat(self.fd).st_ino

    def wait(self):
        poller = select.poll()
        poller.register(self.fd, 0)
        with contextlib.suppress(OSError):
            # By now the number may be that of another socket, and after an error nothing leaves.
            while os.fstat(self.fd).st_ino == self.inode and not poller.poll(0) and struct.unpack(
                    'i', fcntl.ioctl(self.fd, self.SIOCOUTQNSD, bytes(4)))[0]:
                time.sleep(0)


class Peer:
    """The server's end of a connection. It always listens, and says what it is told to say."""

    def __init__(self, index, transport):
        self.index = index
        self.transport = transport
        self.client_end, self.sock = socket_pair(transport)
        self.sock.setblocking(False)
        self.sent = [Sent(end) for end in (self.client_end, self.sock) if transport == 'tcp']
        self.is_open = True
        # What is left to say: pairs of bytes and whether these were asked for.
        self.script = collections.deque()
        # The bytes of it that are encrypted already.
        self.record = b''
        self.heard = b''
        # The last request that was heard: its number, its method, and how much of its body is
        # missing.
        self.number = None
        self.method = b''
        self.body_left = 0
        self.is_outstanding = False
        self.is_last = False
        self.has_said_unasked = False
        self.tls = None
        if transport == 'tls':
            self.encrypted = ssl.MemoryBIO(), ssl.MemoryBIO()
            self.tls = contexts()[1].wrap_bio(*self.encrypted, server_side=True)
            self.is_secure = False

    def __repr__(self):
        return f'peer {self.index}'

    # Hearing

    def listen(self):
        """Take all that the client has sent."""
        for sent in self.sent:
            sent.wait()
        try:
            while self.is_open:
                data = self.sock.recv(2 ** 20)
                if not data:
                    self.close()
                self.hear(data)
        except BlockingIOError:
            pass
        except OSError:
            self.close()

    def hear(self, data):
        if self.tls is not None:
            data = self.decrypted(data)
        self.heard += data
        while self.heard:
            if self.body_left:
                content, self.heard = self.heard[:self.body_left], self.heard[self.body_left:]
                check(not content.strip(b'u'), f'in a request body came {content[:60]!r}')
                self.body_left -= len(content)
            elif b'\r\n\r\n' in self.heard:
                head, _, self.heard = self.heard.partition(b'\r\n\r\n')
                self.start(head)
            else:
                return

    def decrypted(self, data):
        incoming, outgoing = self.encrypted
        incoming.write(data)
        heard = b''
        with contextlib.suppress(ssl.SSLWantReadError):
            if not self.is_secure:
                self.tls.do_handshake()
                self.is_secure = True
            while more := self.tls.read(2 ** 16):
                heard += more
        if outgoing.pending:
            # The bytes of a handshake are not cut, since another search does that.
            self.sock.send(outgoing.read())
        return heard

    def start(self, head):
        match = re.match(rb'(GET|HEAD|POST) /([0-9]+) HTTP/1\.1\r\n', head)
        check(match is not None, f'as a request came {head[:60]!r}')
        COUNTS['requests'] += 1
        COUNTS['on a used connection'] += self.number is not None
        check(not self.is_outstanding,
              f'request {int(match[2])} came before the answer to the last')
        check(not any(was_asked for _, was_asked in self.script),
              f'request {int(match[2])} came before the end of the last answer')
        check(not self.is_last,
              f'request {int(match[2])} came after the last response of its connection')
        check(not self.has_said_unasked,
              f'request {int(match[2])} came over a connection with unasked bytes')
        self.method, self.number = match[1], int(match[2])
        length = re.search(rb'\r\ncontent-length: ([0-9]+)', head)
        self.body_left = int(length[1]) if length else 0
        self.is_outstanding = True
        # Unasked bytes that were not said in time would be a forged answer now.
        self.script.clear()

    # Saying

    def say(self, data, was_asked):
        self.script.append((data, was_asked))

    def send(self, length=2 ** 20, record_length=2 ** 20):
        """Say up to `length` bytes of the script.

        In TLS these are one record, of which up to `record_length` bytes are sent.
        """
        data = self.record or self.take(length)
        if self.tls is not None:
            if not self.record and data:
                self.tls.write(data)
                data = self.encrypted[1].read()
            data, self.record = data[:record_length], data[record_length:]
        try:
            sent = self.sock.send(data) if data else 0
            check(sent == len(data), 'the search sends more at once than the kernel takes')
        except (BrokenPipeError, ConnectionResetError):
            self.close()
        for sent in self.sent:
            sent.wait()

    def take(self, length):
        data = b''
        while self.script and len(data) < length:
            more, was_asked = self.script.popleft()
            data += more
            self.has_said_unasked |= not was_asked
        if len(data) > length:
            self.script.appendleft((data[length:], was_asked))
        return data[:length]

    def is_talking(self):
        return self.is_open and bool(self.script or self.record)

    def end(self):
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
        self.script.clear()
        self.record = b''

    def reset(self):
        if self.is_open and self.transport == 'tcp':
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        self.close()

    def close(self):
        self.is_open = False
        self.sock.close()


# ----------------------------------------------------------------------------------- answers

def content_of(number, length):
    return (b'%d,' % number * length)[:length]


def in_chunks(content, size):
    chunks = [content[start:start + size] for start in range(0, len(content), size)]
    return b''.join(b'%x\r\n%b\r\n' % (len(chunk), chunk) for chunk in chunks)


def answer_to(number, method, code, framing, length):
    """An answer, its content, and whether it ends with the connection."""
    content = content_of(number, length)
    if framing == 'length':
        fields, data = b'content-length: %d\r\n' % length, content
    elif framing == 'chunked':
        fields = b'Transfer-Encoding: chunked\r\n'
        data = in_chunks(content, 7) + b'0\r\nx-number: %d\r\n\r\n' % number
    elif framing == 'close':
        fields, data = b'content-length: %d\r\nConnection: close\r\n' % length, content
    else:
        fields, data = b'', content
    if method == b'HEAD' or code in (204, 304):
        content = data = b''
        framing = 'none'
    head = b'HTTP/1.1 %d Some reason\r\nx-number: %d\r\n%b\r\n' % (code, number, fields)
    return head + data, content, framing == 'end'


UNASKED = {
    'answer': answer_to(999_999, b'GET', 200, 'length', 3)[0],
    'answer in chunks': answer_to(999_999, b'GET', 200, 'chunked', 9)[0],
    'answer without body': b'HTTP/1.1 204 No content\r\nx-number: 999999\r\n\r\n',
    'begin of an answer': b'HTTP/1.1 200 OK\r\nx-number: 999999\r\n',
    'fields': b'x-number: 999999\r\ncontent-length: 0\r\n\r\n',
    'interim': b'HTTP/1.1 100 Continue\r\n\r\n',
    'time-out': b'HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n',
    'empty line': b'\r\n',
    'line feed': b'\n',
    'chunk': b'3\r\nabc\r\n0\r\n\r\n',
    'zero': b'\0',
}


# ---------------------------------------------------------------------------------- the search

class Answers(RuleBasedStateMachine):
    """A pool, its server and their requests. Each rule is something that may happen next."""

    transport = 'unix'
    loop_name = 'asyncio'

    def __init__(self):
        super().__init__()
        COUNTS['schedules'] += 1
        self.loop = new_loop(self.loop_name)
        self.failures = []
        self.loop.set_exception_handler(lambda _, context: self.failures.append(context))
        self.peers = []
        # True until the pool is open, and after a failure, since nothing can be checked then.
        self.is_broken = True
        self.last_number = 0
        self.tasks = {}
        # For each number, the content of the answer, and whether a part of it may look whole.
        self.answers = {}
        self.gates = []

    @initialize(max_connections=st.integers(1, 3),
                recv_bufsize=st.sampled_from((131072, 131072, 1, 50, 16384)))
    def open(self, max_connections, recv_bufsize):
        self.request, self.close_pool = Pool(
            get_connection=self.get_connection, get_ssl_context=lambda: contexts()[0],
            max_connections=max_connections, recv_bufsize=recv_bufsize)
        self.is_broken = False

    async def get_connection(self, scheme, host, port):
        peer = Peer(len(self.peers), self.transport)
        self.peers.append(peer)
        # If the peer kept the client's end, that would never be closed.
        client_end, peer.client_end = peer.client_end, None
        return client_end

    # The client

    @precondition(lambda self: len(self.tasks) < 8)
    @rule(method=st.sampled_from((b'GET', b'GET', b'HEAD', b'POST')),
          use=st.sampled_from(('all', 'all', 'all', 'head only', 'one chunk')))
    def ask(self, method=b'GET', use='all'):
        self.last_number = number = self.last_number + 1
        self.tasks[number] = self.loop.create_task(self.exchange(number, method, use))
        self.turn(2)

    async def exchange(self, number, method, use):
        headers, body = (), {}
        if method == b'POST':
            headers = ((b'content-length', b'30'),) + (
                ((b'expect', b'100-continue'),) if number % 4 == 0 else ())
            body = {'body': self.upload}
        try:
            code, fields, content = await self.request(
                method, self.url(number), headers=headers, **body)
            check((b'x-number', b'%d' % number) in fields,
                  f'request {number} was given the answer {fields!r}')
            if use == 'all':
                self.check_content(number, await buffered(content))
                check(all(field == (b'x-number', b'%d' % number) for field in content.trailers),
                      f'request {number} was given the trailers {content.trailers!r}')
            elif use == 'one chunk':
                async for chunk in content:
                    expected = self.answers[number][0]
                    check(expected.startswith(chunk), f'request {number} was given {chunk!r}')
                    break
        except HttpError as error:
            COUNTS[type(error).__name__] += 1
        else:
            COUNTS['answered'] += 1

    def check_content(self, number, content):
        expected, may_be_short = self.answers[number]
        check(content == expected or may_be_short and expected.startswith(content),
              f'request {number} was given {content[:60]!r} for {expected[:60]!r}')

    def url(self, number):
        return f'{"https" if self.transport == "tls" else "http"}://name.test/{number}'

    async def upload(self):
        yield b'u' * 10
        gate = self.loop.create_future()
        self.gates.append(gate)
        await gate
        yield b'u' * 20

    def open_gates(self):
        for gate in self.gates:
            if not gate.done():
                gate.set_result(None)

    @rule(what=st.sampled_from(('turn', 'turn', 'upload', 'cancel', 'time')), data=st.data())
    def go_on(self, what, data):
        if what == 'upload':
            self.open_gates()
        elif what == 'cancel' and self.tasks:
            self.tasks[data.draw(st.sampled_from(sorted(self.tasks)))].cancel()
        elif what == 'time' and isinstance(self.loop, MovableClock):
            self.loop.offset += data.draw(st.sampled_from((0.1, 0.5, 1.5, 20)))
        self.turn(data.draw(st.integers(1, 5)))

    def turn(self, number):
        try:
            self.take_turns(number)
        except Broken:
            self.is_broken = True
            raise

    def take_turns(self, number):
        self.loop.run_until_complete(turns(number))
        for peer in self.peers:
            peer.listen()
        for number, task in list(self.tasks.items()):
            if task.done():
                del self.tasks[number]
                if not task.cancelled():
                    task.result()
        check(not self.failures, f'the loop was told of {self.failures}')

    # The server

    @rule(what=st.sampled_from(
              ('answer', 'unasked') * 6 + ('send', 'hang_up') * 2 + ('interim',)),
          turns=st.sampled_from((0, 0, 0, 1, 2, 4)), data=st.data())
    def serve(self, what, turns, data):
        able = [peer for peer in self.peers if peer.is_open and (
            peer.is_outstanding if what in ('answer', 'interim') else
            # Everything that was asked for has been answered.
            peer.number is not None and not peer.is_outstanding if what == 'unasked' else
            peer.is_talking() if what == 'send' else True)]
        if able:
            getattr(self, what)(data.draw(st.sampled_from(able)), data.draw)
            if turns:
                self.turn(turns)

    def answer(self, peer, draw):
        COUNTS['early answers'] += peer.body_left > 0
        framing = draw(st.sampled_from(('length', 'length', 'chunked', 'chunked', 'close', 'end')))
        code = draw(st.sampled_from((200, 200, 200, 204, 304, 404)))
        length = draw(st.sampled_from((0, 1, 5, 100, 20_000)))
        answer, content, is_to_the_end = answer_to(
            peer.number, peer.method, code, framing, length)
        self.answers[peer.number] = content, is_to_the_end
        peer.say(answer, True)
        peer.is_outstanding = False
        # Some servers send the content that a 204 declares.
        peer.is_last = framing == 'close' or code == 204 and (
            framing == 'chunked' or framing == 'length' and length > 0)
        if is_to_the_end:
            peer.send()
            peer.end()
        else:
            self.send(peer, draw)

    def unasked(self, peer, draw):
        COUNTS['unasked'] += 1
        peer.say(UNASKED[draw(st.sampled_from(sorted(UNASKED)))], False)
        if draw(st.booleans()):
            peer.send()
        else:
            self.send(peer, draw)
        # A request after unasked bytes is what this search is about, so it must not be rare.
        if draw(st.booleans()):
            self.ask()

    def interim(self, peer, draw):
        code = draw(st.sampled_from((100, 102, 103)))
        count = draw(st.sampled_from((1, 2, 99, 101)))
        peer.say(b'HTTP/1.1 %d Wait\r\nx-number: 999999\r\n\r\n' % code * count, True)
        self.send(peer, draw)

    def send(self, peer, draw):
        peer.send(draw(st.sampled_from((2 ** 20, 2 ** 20, 0, 1, 3, 10, 60, 80))),
                  draw(st.sampled_from((2 ** 20, 2 ** 20, 1, 4, 10, 40))))

    def hang_up(self, peer, draw):
        getattr(peer, draw(st.sampled_from(('end', 'close', 'reset'))))()

    # The end

    def teardown(self):
        try:
            if not self.is_broken:
                self.finish()
        finally:
            for task in self.tasks.values():
                task.cancel()
            self.loop.run_until_complete(turns(10))
            for peer in self.peers:
                peer.close()
            self.loop.close()

    def finish(self):
        """Let the server behave. Then everything ends, and the pool serves another request."""
        self.go_well()
        before = COUNTS['answered']
        self.ask()
        self.go_well()
        check(COUNTS['answered'] == before + 1, 'a request after all of this was not answered')
        self.loop.run_until_complete(self.close_pool())
        self.turn(2)
        check(not any(peer.is_open for peer in self.peers), 'a closed pool left connections open')

    def go_well(self):
        for _ in range(100):
            self.open_gates()
            self.turn(4)
            for peer in self.peers:
                if peer.is_outstanding:
                    answer, content, _ = answer_to(peer.number, peer.method, 200, 'length', 5)
                    self.answers[peer.number] = content, False
                    peer.say(answer, True)
                    peer.is_outstanding = False
                while peer.is_talking():
                    peer.send()
            if not self.tasks:
                return
        check(False, f'requests {sorted(self.tasks)} do not end')


def search(transport, loop_name, examples, steps, number=None):
    """Run hypothesis once. The number is the seed. With None the schedules are always the same."""
    machine = type('Answers', (Answers,), {'transport': transport, 'loop_name': loop_name})
    if number is not None:
        machine = seed(number)(machine)
    run_state_machine_as_test(machine, settings=settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, database=None,
        derandomize=number is None, phases=(Phase.generate, Phase.shrink),
        print_blob=False, report_multiple_bugs=False, suppress_health_check=list(HealthCheck)))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--examples', type=int, default=200,
                        help='schedules for each transport in a round')
    parser.add_argument('--steps', type=int, default=50, help='of a schedule, at most')
    parser.add_argument('--minutes', type=float, default=0,
                        help='of more rounds, each with the next seed')
    parser.add_argument('--transports', default=','.join(TRANSPORTS))
    parser.add_argument('--loop', choices=('asyncio', 'uvloop'), default='asyncio')
    options = parser.parse_args()
    end = time.monotonic() + options.minutes * 60
    number = options.seed
    while number == options.seed or time.monotonic() < end:
        for transport in options.transports.split(','):
            try:
                search(transport, options.loop, options.examples, options.steps, number)
            except Exception as error:
                sys.exit('\n'.join((
                    f'BROKEN, with --transports {transport} --seed {number}: {error}',
                    *getattr(error, '__notes__', ()))))
        print(f'seed {number}: ' + ', '.join(
            f'{count} {what}' for what, count in COUNTS.items()), flush=True)
        number += 1


if __name__ == '__main__':
    main()
