"""Connections that idle: which of them are used again, and when they are closed."""

import asyncio
import contextlib
import errno
import ipaddress
import itertools
import os
import select
import socket
import ssl
import threading
import time

import pytest

from lowhaio import HttpConnectionError, HttpDataError, Pool, buffered
from tests.harness import (
    FORGED,
    OK,
    PATIENCE,
    TLS_VERSIONS,
    Answering,
    AnsweringInThreads,
    Server,
    ThreadServer,
    certified,
    context_of,
    ends_after,
    failed,
    get,
    on_clock,
    on_loops,
    open_descriptors,
    passing,
    pool,
    receive_end,
    receive_head,
    resolving,
    row,
    send_reset,
    server_context,
    trusting,
    turns,
    until,
)


@on_loops
async def test_the_connection_released_last_is_reused_first():
    gates = [asyncio.Event() for _ in range(3)]
    released = []
    answering = Answering(OK[:-1])

    async def script(peer):
        await peer.read_head()
        await gates[peer.index].wait()
        await peer.send(OK)
        await answering(peer)

    async def get_first(request, url):
        released.append(await get(request, url))

    async with Server(script) as server, pool() as request, asyncio.TaskGroup() as group:
        for _ in gates:
            group.create_task(get_first(request, server.url))
        await until(lambda: len(server.peers) == 3)
        for number, index in enumerate((1, 2, 0), 1):
            gates[index].set()
            await until(lambda: len(released) == number)  # noqa: B023
        # Each of these, its body not whole, keeps the connection that it has.
        responses = [await request(b'GET', server.url) for _ in range(3)]
        assert answering.connections == [0, 2, 1]
        for _, _, body in responses:
            await body.aclose()


async def ends_of_idle(respond, is_idle=None, **options):
    """Respond to one request, and return what the server sees after its response."""
    ends = []

    async def script(peer):
        await peer.read_head()
        await respond(peer)
        ends.append(await peer.closed())

    request, close = Pool(**options)
    async with Server(script) as server:
        assert (await get(request, server.url))[2] == b'ok'
        if is_idle is not None:
            is_idle.set()
        await until(lambda: ends)  # and this before `close`
        await close()
    return ends


def kept_alive_for(seconds):
    return OK.replace(b'\r\n\r\n', b'\r\nkeep-alive: timeout=%d\r\n\r\n' % seconds)


# The option, the response, and the seconds after which an idle connection closes.
IDLE_TIMES = {
    'the option alone': (5, OK, 5),
    'the server allows more': (5, kept_alive_for(100), 5),
    'the server allows less: a second less, for the way': (15, kept_alive_for(2), 1),
    'the server allows a second': (15, kept_alive_for(1), 0),
    'the server allows none': (15, kept_alive_for(0), 0),
    'off': (0, OK, 0),
    'off, whatever the server allows': (0, kept_alive_for(100), 0),
}


@on_clock
async def test_an_idle_connection_closes_when_its_time_is_over():
    for case, (keep_alive_timeout, response, seconds) in IDLE_TIMES.items():
        async def respond(peer):
            await peer.send(response)  # noqa: B023

        with row(case):
            is_idle = asyncio.Event()
            ends = ends_of_idle(respond, is_idle, keep_alive_timeout=keep_alive_timeout)
            if seconds:
                ends = await ends_after(seconds, ends, is_idle.is_set)
            assert await ends == [b'']


@on_clock
async def test_keep_alive_timeout_begins_anew_with_each_response():
    answering = Answering(OK)
    async with Server(answering) as server, pool(keep_alive_timeout=5) as request:
        for _ in range(5):
            await get(request, server.url)
            await passing(4)
    assert answering.connections == [0] * 5


@on_clock
async def test_keep_alive_timeout_does_not_end_a_response():
    async def script(peer):
        await peer.read_head()
        await peer.send(OK)
        await peer.read_head()
        await passing(6)
        await peer.send(OK[:-1])
        await passing(6)
        await peer.send(OK[-1:])
        await peer.closed()

    async with Server(script) as server, pool(keep_alive_timeout=5) as request:
        for _ in range(2):
            assert (await get(request, server.url))[2] == b'ok'
        assert len(server.peers) == 1


@on_clock
async def test_a_connection_past_its_keep_alive_timeout_is_not_reused_by_a_late_loop():
    answering = Answering(OK)
    async with Server(answering) as server, pool(keep_alive_timeout=5) as request:
        await get(request, server.url)
        asyncio.get_running_loop().now += 6  # and its timer has not been called
        await get(request, server.url)
    assert answering.connections == [0, 1]


@on_loops
async def test_a_peer_that_hangs_up_while_idle_is_closed_at_once():
    async def respond(peer):
        await peer.send(OK)
        await turns(10)
        peer.writer.write_eof()

    assert await ends_of_idle(respond) == [b'']


@on_loops
async def test_a_peer_that_hangs_up_is_noticed_when_the_body_had_to_wait_for_its_reader():
    # The loop stops looking at what nobody reads, and has to begin again.
    async def script(peer):
        await peer.read_head()
        await peer.send(OK[:-2])
        await has_head.wait()
        await peer.send(OK[-2:])
        has_come.set()
        await is_read.wait()
        peer.writer.write_eof()
        ends.append(await peer.closed())

    has_head, has_come, is_read, ends = asyncio.Event(), asyncio.Event(), asyncio.Event(), []
    async with Server(script) as server, pool(keep_alive_timeout=1000) as request:
        _, _, body = await request(b'GET', server.url)
        has_head.set()
        await has_come.wait()
        await turns(5)
        assert await buffered(body) == b'ok'
        is_read.set()
        await until(lambda: ends == [b''])


@on_loops
async def test_data_on_an_idle_connection_closes_it_at_once():
    async def respond(peer):
        await peer.send(OK)
        await turns(10)
        await peer.send(FORGED)

    assert await ends_of_idle(respond) == [b'']


@on_loops
async def test_a_peer_that_resets_while_idle_is_closed_at_once():
    is_reset = asyncio.Event()

    async def script(peer):
        await peer.read_head()
        await peer.send(OK)
        await is_reset.wait()
        peer.reset()

    async with Server(script) as server, pool() as request:
        await get(request, server.url)
        await turns(5)
        before = open_descriptors()
        is_reset.set()
        await until(lambda: len(before - open_descriptors()) == 2)  # both ends


@pytest.mark.parametrize('closed', [0, 1])
@on_loops
async def test_of_two_idle_connections_the_one_that_closed_is_forgotten(closed):
    async def script(peer):
        try:
            while True:
                await peer.read_head()
                connections.append(peer.index)
                await until(lambda: len(connections) >= 2)
                await peer.send(OK)
        finally:
            ended.append(peer.index)

    connections, ended = [], []
    async with Server(script) as server, pool() as request:
        await asyncio.gather(*[get(request, server.url) for _ in range(2)])
        server.peers[closed].writer.write_eof()
        await until(lambda: ended == [closed])
        await asyncio.gather(*[get(request, server.url) for _ in range(2)])
    assert sorted(connections[2:]) == [1 - closed, 2]


# What a server does, over a connection that idles while the loop is blocked.
def send_data(sock):
    sock.sendall(FORGED)


def send_end(sock):
    socket.socket.shutdown(sock, socket.SHUT_WR)


def send_goodbye(sock):
    with contextlib.suppress(OSError):
        sock.settimeout(0)
        sock.unwrap()


UNSEEN = {
    'data': ('http', send_data),
    'end': ('http', send_end),
    'reset': ('http', send_reset),
    'data in TLS': ('https', send_data),
    'end in TLS': ('https', send_end),
    'close_notify': ('https', send_goodbye),
    'reset in TLS': ('https', send_reset),
}


class Poisoning:
    """A script that answers one request and, once told to, does something over its idle
    connection. Other connections it answers as they want."""

    def __init__(self, act):
        self.act = act
        self.is_first = True
        self.go_on = threading.Event()
        self.is_done = threading.Event()

    def __call__(self, sock):
        is_first, self.is_first = self.is_first, False
        receive_head(sock)
        sock.sendall(OK)
        if is_first:
            self.go_on.wait(PATIENCE)
            self.act(sock)
            self.is_done.set()
            receive_end(sock)
        else:
            AnsweringInThreads()(sock)

    def act_while_the_loop_is_blocked(self):
        self.go_on.set()
        assert self.is_done.wait(PATIENCE)
        time.sleep(0.003)


@on_loops
async def test_an_idle_connection_is_looked_at_before_its_reuse():
    """What came while the loop was blocked, the loop has not seen."""
    for case, (scheme, act) in UNSEEN.items():
        script = Poisoning(act)
        with row(case), ThreadServer(script, context_of(scheme)) as server:
            async with pool(get_ssl_context=trusting) as request:
                await get(request, server.url)
                script.act_while_the_loop_is_blocked()
                assert (await get(request, server.url))[2] == b'ok'
                assert (await get(request, server.url))[2] == b'ok'
                assert len(server.socks) == 2


@on_loops
async def test_a_connection_that_idled_while_a_resolver_blocked_the_loop_is_looked_at():
    script = Poisoning(send_data)
    names = []

    async def resolve(host):
        names.append(host)
        if len(names) == 2:
            script.act_while_the_loop_is_blocked()
        return (ipaddress.IPv4Address('127.0.0.1'),)

    with ThreadServer(script) as server:
        async with pool(get_dns_resolver=resolving(resolve)) as request:
            for _ in range(3):
                # Without a turn of the loop in between.
                body = (await get(request, f'http://a.test:{server.port}/'))[2]
                assert body == b'ok'


@on_loops
async def test_a_connection_that_expired_while_a_resolver_blocked_the_loop_is_not_reused():
    answering = Answering(OK)
    names = []

    async def resolve(host):
        names.append(host)
        if len(names) == 2:
            time.sleep(0.02)
        return (ipaddress.IPv4Address('127.0.0.1'),)

    options = {'get_dns_resolver': resolving(resolve), 'keep_alive_timeout': 0.01}
    async with Server(answering) as server, pool(**options) as request:
        for _ in range(2):
            await get(request, f'http://a.test:{server.port}/')
    assert answering.connections == [0, 1]


@on_loops
async def test_a_forged_response_in_a_tls_record_of_its_own_is_not_delivered():
    """It came together with the response before it, but is read apart from that."""
    def script(sock):
        while True:
            receive_head(sock)
            # Both records leave in one segment.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
            sock.sendall(OK)
            sock.sendall(FORGED)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)

    with ThreadServer(script, server_context()) as server:
        async with pool(get_ssl_context=trusting) as request:
            for _ in range(20):
                assert (await get(request, server.url))[2] == b'ok'


class RawTls:
    """The server's end of TLS over a socket, whose records are sent as the caller likes."""

    def __init__(self, sock, version):
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = certified('127.0.0.1', version=version)
        context.num_tickets = 0  # which would come after the handshake
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)

    async def run(self, function):
        """Until it neither wants to read nor has written what has not been sent."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                result = function()
            except ssl.SSLWantReadError:
                await loop.sock_sendall(self.sock, self.outgoing.read())
                self.incoming.write(await loop.sock_recv(self.sock, 65536))
            else:
                await loop.sock_sendall(self.sock, self.outgoing.read())
                return result

    def record(self, data):
        self.tls.write(data)
        return self.outgoing.read()


@pytest.mark.parametrize('length', [1, 4, 5, 6, 40, -1])
@TLS_VERSIONS
@on_loops
async def test_the_beginning_of_a_tls_record_is_unasked_for(version, length):
    """What it begins may be an answer to a request that has not been made yet."""
    async def get_connection(scheme, host, port):
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        servers.append(stack.enter_context(theirs))
        return ours

    async def serve():
        server = RawTls(servers[-1], version)
        await server.run(server.tls.do_handshake)
        await server.run(lambda: server.tls.read(65536))
        await asyncio.get_running_loop().sock_sendall(server.sock, server.record(OK))
        return server

    servers = []
    options = {'get_connection': get_connection, 'get_ssl_context': trusting}
    with contextlib.ExitStack() as stack:
        for waits in (turns(5), turns(0)):
            async with pool(**options) as request:
                task = asyncio.create_task(get(request, 'https://127.0.0.1/'))
                await until(lambda: servers)
                server = await serve()
                assert (await task)[2] == b'ok'
                record = server.record(FORGED)
                server.sock.send(record[:length])
                await waits
                task = asyncio.create_task(get(request, 'https://127.0.0.1/'))
                await until(lambda: len(servers) == 2)
                with contextlib.suppress(OSError):
                    server.sock.send(record[length:])
                await serve()
                assert (await task)[2] == b'ok'
            servers.clear()


@on_loops
async def test_what_the_system_says_to_closing_a_socket_is_of_no_interest():
    class Failing(socket.socket):
        def close(self):
            super().close()
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        def getpeername(self):
            if is_bad:
                raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
            return super().getpeername()

        def setblocking(self, flag):
            if is_bad:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            super().setblocking(flag)

    async def get_connection(scheme, host, port):
        sock = Failing()
        is_bad or sock.connect(('127.0.0.1', port))
        return sock

    options = {'max_connections': 1, 'keep_alive_timeout': 0}
    for hook in ({'get_connection': get_connection}, {'get_sock': Failing}):
        for is_bad in (True, False):
            async with (Server(Answering(OK)) as server,
                        pool(**hook, **options) as request):
                for _ in range(3):
                    if is_bad:
                        await failed(get(request, server.url), HttpConnectionError, OSError)
                    else:
                        assert (await get(request, server.url))[2] == b'ok'


@on_loops
async def test_a_forged_response_that_came_before_its_request_is_not_delivered():
    """Of two, the second comes after the first was read from the socket, and before the task
    that waits for it could go on."""
    with socket.create_server(('127.0.0.1', 0)) as listener:
        url = f'http://127.0.0.1:{listener.getsockname()[1]}/'

        async def get_two(request):
            return [(await get(request, url))[2] for _ in range(2)]

        async with pool(socket_timeout=0.05) as request:
            for ahead in itertools.count():
                task = asyncio.create_task(get_two(request))
                await turns(5)
                sock, _ = listener.accept()
                with sock:
                    receive_head(sock)
                    sock.sendall(OK)
                    await turns(ahead)
                    is_too_late = select.select([sock], [], [], 0)[0]
                    sock.sendall(FORGED)
                    # The second request times out: nobody accepts its connection.
                    [result] = await asyncio.gather(task, return_exceptions=True)
                if is_too_late:
                    break
                assert type(result) is HttpDataError
                listener.accept()[0].close()
        assert ahead >= 1


@on_loops
async def test_a_descriptor_may_be_0():
    """As in a process that has closed its standard input."""
    descriptors = []

    def get_sock(family):
        sock = socket.socket(family)
        descriptors.append(sock.fileno())
        return sock

    async def script(peer):
        await peer.read_head()
        await peer.send(OK[:-1], OK[-1:])
        await peer.closed()
        ended.set_result(None)

    ended = asyncio.get_running_loop().create_future()
    async with Server(script) as server:
        stdin = os.dup(0)
        os.close(0)
        try:
            async with pool(get_sock=get_sock) as request:
                assert (await get(request, server.url))[2] == b'ok'
            await ended
        finally:
            os.dup2(stdin, 0)
            os.close(stdin)
    assert descriptors == [0]
