"""What one request may have of its own, `timeouts`, `target` and `server_hostname`, what its body
tells of its connection, and the phases of errors.
"""

import asyncio
import collections
import contextlib
import contextvars
import ipaddress
import select
import socket
import ssl
import threading

import pytest

from lowhaio import (
    ConnectionFacts,
    HttpConnectionError,
    HttpDataError,
    HttpDnsError,
    HttpTlsError,
    Phase,
    Pool,
    buffered,
    streamed,
)
from tests.harness import (
    CONTINUE,
    LOOPS,
    NO_CONTENT,
    OK,
    PATIENCE,
    SCHEMES,
    UNFINISHED,
    UPLOAD,
    Answering,
    Server,
    Sockets,
    ThreadServer,
    bound_to,
    certified,
    chunked,
    context_of,
    ends_after,
    failed,
    failure,
    get,
    head,
    holding,
    of_length,
    on_clock,
    on_loops,
    on_one_loop,
    measured,
    passing,
    pool,
    receive_end,
    receive_head,
    resolving,
    row,
    send_reset,
    server_context,
    small_sending_sock,
    trusting,
    turns,
    until,
    where,
    yielding,
)


# --------------------------------------------------------------------- the times of one request


def passed(kind, seconds=5):
    return f"TimeoutError: timeouts['{kind}'], {seconds} seconds, passed"


@SCHEMES
@on_clock
async def test_a_request_has_its_own_time_to_read(scheme):
    for sent, phase in (b'', 'head'), (CONTINUE, 'head'), (UNFINISHED, 'body'):
        script = holding(sent)
        async with Server(script, context_of(scheme)) as server, pool(
                get_ssl_context=trusting, socket_timeout=2) as request:
            error = await failed(
                await ends_after(5, get(request, server.url, timeouts={'read': 5}),
                                 lambda: script.sent),  # noqa: B023
                HttpDataError, TimeoutError,
                f'{where(server)}reading the response {phase}: {passed("read")}')
            assert error.phase is (Phase.HEAD if phase == 'head' else Phase.CONTENT)


@on_clock
async def test_each_read_has_the_time_of_its_request():
    async def script(peer):
        await peer.read_head()
        for piece in (head(b'content-length: 3'), *b'abc'):
            await passing(4)
            await peer.send(piece if isinstance(piece, bytes) else bytes([piece]))

    async with Server(script) as server, pool(socket_timeout=1) as request:
        assert (await get(request, server.url, timeouts={'read': 5}))[2] == b'abc'


@on_clock
async def test_the_next_request_of_a_connection_has_the_times_of_the_pool_again():
    asked = []

    async def script(peer):
        await peer.read_head()
        await passing(4)
        await peer.send(OK)
        await peer.read_head()
        asked.append(True)
        await peer.closed()

    async with Server(script) as server, pool(socket_timeout=3) as request:
        assert (await get(request, server.url, timeouts={'read': 5}))[2] == b'ok'
        error = await failed(
            await ends_after(3, get(request, server.url), lambda: asked),
            HttpDataError, TimeoutError,
            f'{where(server)}reading the response head: TimeoutError: socket_timeout, 3 seconds, '
            'passed')
        assert error.reused


@SCHEMES
@on_clock
async def test_the_time_of_an_earlier_wait_does_not_end_the_sending(scheme):
    """The response is there at the first look, so the last that waited was the idle connection."""
    is_there = threading.Event()

    def script(sock):
        receive_head(sock)
        sock.sendall(OK)
        receive_head(sock)
        sock.sendall(OK)
        is_there.set()
        assert receive_end(sock) == b'abc'

    async def body():
        yield b'a'
        # It is sent before the generator goes on.
        await asyncio.sleep(0)
        is_there.wait(PATIENCE)
        yield b'b'
        await asyncio.sleep(100)
        yield b'c'

    with ThreadServer(script, context_of(scheme)) as server:
        async with pool(get_ssl_context=trusting, keep_alive_timeout=5) as request:
            times = {'connect': 5, 'read': 5}
            assert (await get(request, server.url, timeouts=times))[2] == b'ok'
            _, _, response = await request(
                b'PUT', server.url, headers=of_length(3), body=body, timeouts=times)
            assert not response.request_sent
            assert await (await ends_after(100, buffered(response))) == b'ok'
            assert response.request_sent


@on_clock
async def test_requests_with_little_time_do_not_keep_another_one_from_its_lookup():
    """The lookup takes longer than they have. The one that has the most time left goes on with it,
    and not the one that came last."""
    async def resolve(host):
        await asyncio.sleep(4)
        return [ipaddress.IPv4Address('127.0.0.1')]

    async with Server(Answering(OK)) as server, pool(
            get_dns_resolver=resolving(resolve)) as request:
        def ask(connect):
            return asyncio.create_task(get(
                request, f'http://a.test:{server.port}/', timeouts={'connect': connect}))

        tasks = [ask(2)]
        await passing(0.5)
        patient = ask(60)
        for _ in range(6):
            tasks.append(ask(2))
            await passing(1)
        await until(patient.done)
        assert patient.result()[2] == b'ok'
        # The first ones have failed, and the last ones have shared what it was told.
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for error in outcomes[:5]:
            assert (type(error), error.phase) == (HttpDnsError, Phase.NAME)
        assert [response[2] for response in outcomes[5:]] == [b'ok'] * 2


@SCHEMES
@on_clock
async def test_a_request_has_its_own_time_to_write(scheme):
    is_there, is_over = threading.Event(), threading.Event()

    def script(sock):
        is_there.set()
        is_over.wait(PATIENCE)
        receive_end(sock)

    with ThreadServer(script, context_of(scheme)) as server:
        server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        async with pool(get_ssl_context=trusting, get_sock=small_sending_sock) as request:
            uploading = request(
                b'PUT', server.url, headers=of_length(len(UPLOAD)), body=streamed(UPLOAD),
                timeouts={'write': 5, 'read': 1})
            seconds, task = await measured(uploading, is_there.is_set)
            error = await failed(
                task, HttpDataError, TimeoutError,
                f'{where(server, "PUT")}sending the request: {passed("write")}')
            assert error.phase is Phase.SEND
            assert 5 <= seconds < 60
            is_over.set()


@on_clock
async def test_the_time_to_write_is_not_that_of_the_body_function():
    answering = Answering(OK)

    async def body():
        for _ in range(2):
            await passing(6)
            yield b'x'

    async with Server(answering) as server, pool() as request:
        code, _, response = await request(
            b'PUT', server.url, headers=of_length(2), body=body, timeouts={'write': 1})
        assert (code, await buffered(response)) == (b'200', b'ok')


@on_clock
async def test_a_request_has_its_own_time_to_look_up():
    async with pool(get_dns_resolver=resolving(silent)) as request:
        error = await failed(
            await ends_after(5, request(b'GET', 'http://a.test/', timeouts={'connect': 5})),
            HttpDnsError, TimeoutError,
            f'GET http://a.test:80: resolving a.test failed: {passed("connect")}')
        assert error.phase is Phase.NAME


async def silent(host):
    await asyncio.get_running_loop().create_future()


@on_clock
async def test_those_who_share_a_lookup_have_a_time_each():
    async with pool(get_dns_resolver=resolving(silent)) as request:
        asking = {seconds: asyncio.create_task(failure(request(
            b'GET', 'http://a.test/', timeouts={'connect': seconds}))) for seconds in (7, 3, 5)}
        for seconds in 3, 5, 7:
            await passing(2.999 if seconds == 3 else 1.999)
            assert not asking[seconds].done()
            await passing(0.001)
            error = await asking[seconds]
            assert (type(error), type(error.__cause__)) == (HttpDnsError, TimeoutError)
            assert str(error).endswith(passed('connect', seconds))


@on_clock
async def test_a_request_has_its_own_time_to_connect():
    asked = []

    async def get_connection(*_):
        asked.append(True)
        await asyncio.get_running_loop().create_future()

    async with pool(get_connection=get_connection) as request:
        error = await failed(
            await ends_after(5, request(b'GET', 'http://a.test/', timeouts={'connect': 5}),
                             lambda: asked),
            HttpConnectionError, TimeoutError,
            f'GET http://a.test:80: get_connection failed: {passed("connect")}')
        assert error.phase is Phase.CONNECT


@on_clock
async def test_a_handshake_has_the_time_to_connect():
    script = holding(b'')
    async with Server(script) as server, pool(get_ssl_context=trusting) as request:
        url = server.url.replace('http:', 'https:')
        error = await failed(
            await ends_after(5, request(b'GET', url, timeouts={'connect': 5, 'read': 1}),
                             lambda: server.peers),
            HttpTlsError, TimeoutError,
            f'GET {url[:-1]} (peer 127.0.0.1:{server.port}): the TLS handshake failed: '
            f'{passed("connect")}')
        assert error.phase is Phase.TLS


@on_clock
async def test_a_request_has_its_own_time_to_wait_for_a_connection():
    async with Server(holding(UNFINISHED)) as server, pool(
            max_connections=1, pool_timeout=100) as request:
        _, _, body = await request(b'GET', server.url)
        error = await failed(
            await ends_after(5, request(b'GET', server.url, timeouts={'pool': 5})),
            HttpConnectionError, TimeoutError,
            f'GET {server.origin}: waiting for a connection failed: {passed("pool")}')
        assert error.phase is Phase.POOL
        await body.aclose()


@on_clock
async def test_none_is_for_never():
    go_on = asyncio.Event()

    async def script(peer):
        for _ in range(2):
            await peer.read_head()
            await passing(1_000_000)
            await peer.send(OK)

    async def resolve(host):
        await go_on.wait()
        return [ipaddress.ip_address('127.0.0.1')]

    never = dict.fromkeys(('connect', 'read', 'write', 'pool'))
    options = {'get_dns_resolver': resolving(resolve), 'max_connections': 1,
               'socket_timeout': 1, 'pool_timeout': 1}
    async with Server(script) as server, pool(**options) as request:
        url = f'http://a.test:{server.port}/'
        first, second = [asyncio.create_task(get(request, url, timeouts=never)) for _ in range(2)]
        await passing(1_000_000)
        assert not first.done()
        go_on.set()
        assert [(await task)[2] for task in (first, second)] == [b'ok'] * 2


@on_clock
async def test_no_time_at_all_fails_what_is_not_there_at_once():
    async with Server(holding(b'')) as server, pool() as request:
        for kind, phase in ('connect', Phase.CONNECT), ('read', Phase.HEAD):
            error = await failure(get(request, server.url, timeouts={kind: 0}))
            assert isinstance(error.__cause__, TimeoutError)
            assert error.phase is phase
            assert passed(kind, 0) in str(error)
        await until(lambda: server.peers)


REFUSED_TIMEOUTS = {
    'a number': (5, TypeError, 'timeouts must be a mapping of connect, read, write and pool to '
                               'seconds or None, got 5'),
    'a list': ([('read', [])], TypeError,
               'timeouts must be a mapping of connect, read, write and pool to seconds or None, '
               "got [('read', [])]"),
    'no number': ({'read': []}, TypeError,
                  'timeouts must be a mapping of connect, read, write and pool to seconds or '
                  "None, got {'read': []}"),
    'a str': ({'read': '5'}, ValueError,
              "timeouts['read'] must be a number of seconds, got '5'"),
    'below 0': ({'pool': -1}, ValueError, "timeouts['pool'] must be a number of seconds, got -1"),
    'nan': ({'write': float('nan')}, ValueError,
            "timeouts['write'] must be a number of seconds, got nan"),
    'inf': ({'connect': float('inf')}, ValueError,
            "timeouts['connect'] must be a number of seconds, got inf"),
    'another key': ({'total': 5}, ValueError,
                    "timeouts must have connect, read, write, pool as keys, got 'total'"),
}


@pytest.mark.parametrize('name', REFUSED_TIMEOUTS)
@on_one_loop
async def test_times_that_are_none_are_refused(name):
    timeouts, cause, message = REFUSED_TIMEOUTS[name]
    async with pool() as request:
        error = await failed(
            request(b'GET', 'http://127.0.0.1:1/', timeouts=timeouts), HttpConnectionError, cause,
            f'GET http://127.0.0.1:1, refused: {message}')
        assert error.phase is Phase.REFUSED


@on_one_loop
async def test_times_may_be_in_any_mapping():
    async with Server(Answering(OK)) as server, pool() as request:
        for timeouts in {}, collections.UserDict(read=5), {'read': 5, 'pool': 1.5, 'write': True}:
            assert (await get(request, server.url, timeouts=timeouts))[2] == b'ok'


# --------------------------------------------------------------------------------- the target

TARGETS = {
    'what a URL may not have': b'/a[b]|{c}^"<>`\\d?e=[f]',
    'the absolute form': b'http://user@example.com:8080/path?query#fragment',
    'the asterisk form': b'*',
    'no slash': b'path',
    'bytes that are no ASCII': b'/caf\xe9/\xff\x80',
    'a stray percent': b'/%/%zz/%2f',
}


@pytest.mark.parametrize('name', TARGETS)
@on_loops
async def test_a_target_is_sent_as_given(name):
    answering = Answering(OK)
    async with Server(answering) as server, pool() as request:
        for headers in (), ((b'a', b'b'),):
            await get(request, server.origin + '/path?query', target=TARGETS[name],
                      headers=headers)
    lines = [head.split(b'\r\n')[:2] for head in answering.heads]
    assert lines == [[b'GET ' + TARGETS[name] + b' HTTP/1.1',
                      b'host: 127.0.0.1:%d' % server.port]] * 2


REFUSED_TARGETS = {
    'nothing': (b'', ValueError, 'target must have no control character, no space, and at least '
                                 'one byte'),
    'a space': (b'/a b', ValueError, 'target must have no control character, no space, and at '
                                     'least one byte'),
    'a line end': (b'/\r\nx: y', ValueError, 'target must have no control character, no space, '
                                             'and at least one byte'),
    'a tab': (b'/\t', ValueError, 'target must have no control character, no space, and at least '
                                  'one byte'),
    'DEL': (b'/\x7f', ValueError, 'target must have no control character, no space, and at least '
                                  'one byte'),
    'a str': ('/', TypeError, 'target must be bytes, got str'),
}


@pytest.mark.parametrize('name', REFUSED_TARGETS)
@on_one_loop
async def test_what_would_break_the_request_line_is_refused(name):
    target, cause, message = REFUSED_TARGETS[name]
    async with pool() as request:
        await failed(request(b'GET', 'http://127.0.0.1:1/', target=target), HttpConnectionError,
                     cause, f'GET http://127.0.0.1:1, refused: {message}')


@on_one_loop
async def test_a_target_has_a_query_of_its_own():
    async with pool() as request:
        await failed(
            request(b'GET', 'http://127.0.0.1:1/', params=(('a', 'b'),), target=b'/'),
            HttpConnectionError, ValueError,
            'GET http://127.0.0.1:1, refused: params must be empty when there is a target, which '
            'has its own query')


# ---------------------------------------------------------------------------- the name in TLS


@contextlib.asynccontextmanager
async def naming_server(*names):
    """A TLS server that notes the name that each connection asks for."""
    context = certified(*names)
    asked = []
    context.sni_callback = lambda sock, name, _: asked.append((name, sock.session_reused))
    answering = Answering(OK)
    async with Server(answering, context) as server:
        yield server, asked, answering


@on_loops
async def test_tls_asks_for_the_name_that_the_request_has():
    async with naming_server('a.test') as (server, asked, answering), pool(
            get_ssl_context=trusting) as request:
        assert (await get(request, server.url, server_hostname='A.test.'))[2] == b'ok'
        error = await failed(
            get(request, server.url), HttpTlsError, ssl.SSLCertVerificationError)
        assert error.phase is Phase.TLS
        error = await failed(
            get(request, server.url, server_hostname='b.test'), HttpTlsError,
            ssl.SSLCertVerificationError)
        assert str(error).startswith(f'GET {server.origin} as b.test (peer 127.0.0.1:')
    assert [name for name, _ in asked] == ['a.test', None, 'b.test']
    # It changes nothing but TLS.
    assert b'host: 127.0.0.1:%d\r\n' % server.port in answering.heads[0]


@on_loops
async def test_a_connection_is_shared_only_under_the_same_name():
    async with naming_server('a.test', 'b.test', '127.0.0.1') as (server, asked, answering), pool(
            get_ssl_context=trusting) as request:
        for _ in range(2):
            for name in 'a.test', 'b.test', None, '127.0.0.1':
                await get(request, server.url, server_hostname=name)
    # An address is asked for by no name, and that of the URL is the same as none.
    assert [name for name, _ in asked] == ['a.test', 'b.test', None]
    assert answering.connections == [0, 1, 2, 2, 0, 1, 2, 2]


@on_loops
async def test_a_session_is_resumed_only_under_the_same_name():
    resumed = []

    async def script(peer):
        resumed.append(peer.writer.get_extra_info('ssl_object').session_reused)
        await peer.read_head()
        await peer.send(OK)

    async with Server(script, certified('a.test', 'b.test')) as server, pool(
            get_ssl_context=trusting, keep_alive_timeout=0) as request:
        for name in 'a.test', 'b.test', 'a.test', 'b.test':
            assert (await get(request, server.url, server_hostname=name))[2] == b'ok'
    assert resumed == [False, False, True, True]


@on_one_loop
async def test_the_limit_of_an_origin_is_that_of_a_name():
    async with Server(holding(UNFINISHED), certified('a.test', 'b.test')) as server, pool(
            get_ssl_context=trusting, max_connections_per_origin=1, pool_timeout=0) as request:
        bodies = [(await request(b'GET', server.url, server_hostname=name))[2]
                  for name in ('a.test', 'b.test')]
        error = await failure(request(b'GET', server.url, server_hostname='a.test'))
        assert error.phase is Phase.POOL
        for body in bodies:
            await body.aclose()


@on_one_loop
async def test_without_tls_the_name_has_no_effect():
    answering = Answering(OK)
    async with Server(answering) as server, pool() as request:
        for name in 'a.test', 'b.test', None:
            await get(request, server.url, server_hostname=name)
    assert answering.connections == [0, 0, 0]


REFUSED_NAMES = {
    'bytes': (b'a.test', TypeError, 'server_hostname must be a str, got bytes'),
    'nothing': ('', ValueError,
                "server_hostname must be a host name or an IP address, got ''"),
    'a port': ('a.test:443', ValueError,
               "server_hostname must be a host name or an IP address, got 'a.test:443'"),
    'a space': ('a test', ValueError,
                "server_hostname must be a host name or an IP address, got 'a test'"),
    'a long one': (300 * 'a', ValueError, 'server_hostname must be a host name or an IP address, '
                                          f"got '{60 * 'a'}'"),
}


@pytest.mark.parametrize('name', REFUSED_NAMES)
@on_one_loop
async def test_what_is_no_name_is_refused(name):
    server_hostname, cause, message = REFUSED_NAMES[name]
    async with pool() as request:
        await failed(
            request(b'GET', 'https://127.0.0.1:1/', server_hostname=server_hostname),
            HttpConnectionError, cause, f'GET https://127.0.0.1:1, refused: {message}')


@on_one_loop
async def test_the_name_may_be_an_ipv6_address():
    async with Server(Answering(OK), certified('::1')) as server, pool(
            get_ssl_context=trusting) as request:
        assert (await get(request, server.url, server_hostname='::1'))[2] == b'ok'


@on_one_loop
async def test_the_zone_of_an_ipv6_address_is_no_part_of_the_name():
    answering = Answering(OK)
    async with Server(answering, certified('fe80::1')) as server, pool(
            get_ssl_context=trusting) as request:
        for name in 'fe80::1%lo', 'fe80::1%25lo', 'fe80::1':
            assert (await get(request, server.url, server_hostname=name))[2] == b'ok'
    assert answering.connections == [0, 0, 0]


# ------------------------------------------------------------- what a body tells of its response

STATUS_LINES = {
    b'HTTP/1.1 200 OK': (b'HTTP/1.1', b'OK'),
    b'HTTP/1.0 404 Not  Found ': (b'HTTP/1.0', b'Not  Found '),
    b'HTTP/1.1 200 ': (b'HTTP/1.1', b''),
    b'HTTP/1.1 200': (b'HTTP/1.1', b''),
    b'HTTP/1.9 200 Caf\xe9': (b'HTTP/1.9', b'Caf\xe9'),
}


@on_loops
async def test_a_body_tells_the_version_and_the_reason():
    for line, told in STATUS_LINES.items():
        with row(line):
            # The second response has a head that is the same as the last one.
            raw = line + b'\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok'
            async with Server(Answering(raw)) as server, pool() as request:
                for _ in range(2):
                    _, _, body = await request(b'GET', server.url)
                    assert (body.http_version, body.reason) == told
                    assert await buffered(body) == b'ok'
                    assert (body.http_version, body.reason) == told


@on_loops
async def test_a_body_tells_them_of_an_early_response_too():
    async def script(peer):
        await peer.read_head()
        await peer.send(b'HTTP/1.1 413 Too Much\r\ncontent-length: 0\r\n\r\n')
        await peer.closed()

    async def body():
        await asyncio.get_running_loop().create_future()
        yield b'x'

    async with Server(script) as server, pool() as request:
        _, _, body = await request(b'PUT', server.url, headers=of_length(1), body=body)
        assert (body.http_version, body.reason) == (b'HTTP/1.1', b'Too Much')


@on_loops
async def test_a_body_tells_both_addresses():
    async with Server(Answering(OK)) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        assert body.connection == ConnectionFacts(
            ('127.0.0.1', server.port), server.peers[0].writer.get_extra_info('peername'),
            None, None, None)
        await buffered(body)
    # The connection has been closed.
    assert body.connection.peer == ('127.0.0.1', server.port)


@on_loops
async def test_a_body_tells_the_tls_of_its_connection():
    certificate = []
    async with Server(Answering(OK, OK), certified('127.0.0.1')) as server, pool(
            get_ssl_context=trusting, keep_alive_timeout=0) as request:
        for _ in range(2):
            # The second connection resumes the session of the first.
            _, _, body = await request(b'GET', server.url)
            theirs = server.peers[-1].writer.get_extra_info('ssl_object')
            facts = body.connection
            assert (facts.tls_version, facts.cipher) == (theirs.version(), theirs.cipher())
            assert await buffered(body) == b'ok'
            certificate.append(facts.certificate)
    names = ssl_names(certificate[0])
    assert names == ['127.0.0.1']
    assert certificate[1] == certificate[0]


def ssl_names(certificate):
    from cryptography import x509
    extension = x509.load_der_x509_certificate(certificate).extensions.get_extension_for_class(
        x509.SubjectAlternativeName)
    return [str(name) for name in extension.value.get_values_for_type(x509.IPAddress)]


class ResetInHandshake(ssl.SSLSocket):
    """The peer has reset the connection before the handshake is seen to be over."""

    def do_handshake(self, block=False):
        super().do_handshake(block)
        poller = select.poll()
        poller.register(self, 0)  # which is for errors and an end alone
        assert poller.poll(PATIENCE * 1000)


@on_loops
async def test_a_connection_that_is_reset_before_its_request_is_an_error():
    """It has no peer that it could tell of. The request tells what has happened."""
    with ThreadServer(send_reset, server_context()) as server:
        async with pool(get_ssl_context=lambda: trusting(
                sslsocket_class=ResetInHandshake)) as request:
            error = await failure(request(b'GET', server.url))
    assert isinstance(error.__cause__, OSError)
    assert error.phase in (Phase.SEND, Phase.HEAD)


# -------------------------------------------------------------------------------- idle connections


@pytest.mark.parametrize('limit', [0, 1, 2, None])
@on_loops
async def test_the_pool_keeps_so_many_idle_connections(limit):
    sockets = Sockets()
    async with Server(Answering(OK)) as server, pool(
            max_idle_connections=limit, get_sock=sockets) as request:
        await asyncio.gather(*[get(request, server.url) for _ in range(4)])
        kept = [sock.fileno() != -1 for sock in sockets.socks]
        assert sum(kept) == (len(kept) if limit is None else limit)


@on_loops
async def test_the_connection_that_has_been_idle_longest_is_closed():
    answering = Answering(OK)
    async with Server(answering) as a, Server(answering) as b, Server(answering) as c, pool(
            max_idle_connections=2) as request:
        for server in a, b, c:
            await get(request, server.url)
        for server in b, c, a:
            await get(request, server.url)
        assert [len(server.peers) for server in (a, b, c)] == [2, 1, 1]


def test_the_number_of_idle_connections_is_checked():
    for value in -1, 1.5, '1':
        with pytest.raises(ValueError, match='^max_idle_connections must be a number, 0 or more, '
                                             f'or None, got {value!r}$'):
            Pool(max_idle_connections=value)


# ------------------------------------------------------------------------------- closing early


@SCHEMES
@on_loops
async def test_a_body_that_is_closed_early_keeps_its_connection_if_the_rest_is_there(scheme):
    async def script(peer):
        for _ in range(2):
            await peer.read_head()
            connections.append(peer.index)
            await peer.send(chunked(b'5\r\nfirst\r\n'))
            await go_on.wait()
            await peer.send(b'6\r\nsecond\r\n', b'0\r\n\r\n')
            sent.append(True)

    connections, sent, go_on = [], [], asyncio.Event()
    async with Server(script, context_of(scheme)) as server, pool(
            get_ssl_context=trusting) as request:
        for _ in range(2):
            _, _, body = await request(b'GET', server.url)
            assert await anext(body) == b'first'
            go_on.set()
            count = len(sent)
            await until(lambda: len(sent) > count)  # noqa: B023
            await body.aclose()
            await body.aclose()
            # What was taken for that is not delivered, and does not look like the end.
            error = await failed(anext(body), HttpDataError, ConnectionAbortedError)
            assert error.phase is Phase.CONTENT
    assert connections == [0, 0]


@on_loops
async def test_a_body_of_which_only_the_end_was_left_ends():
    async def script(peer):
        await peer.read_head()
        await peer.send(chunked(b'5\r\nfirst\r\n'), b'0\r\na: b\r\n\r\n')
        await Answering(OK)(peer)

    async with Server(script) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        assert await anext(body) == b'first'
        await turns(10)
        await body.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(body)
        assert body.trailers == ((b'a', b'b'),)
        assert (await get(request, server.url))[2] == b'ok'
        assert len(server.peers) == 1


@pytest.mark.parametrize('rest', [b'', b'6\r\nsec', None, b'nonsense\r\n', b'0\r\n\r\nsurplus'])
@on_loops
async def test_a_body_that_is_closed_early_closes_a_connection_that_is_of_no_more_use(rest):
    async def script(peer):
        await peer.read_head()
        await peer.send(chunked(b'5\r\nfirst\r\n'))
        await go_on.wait()
        if rest is None:
            return
        await peer.send(rest)
        sent.append(True)
        await peer.closed()

    sent, go_on, sockets = [], asyncio.Event(), Sockets()
    async with Server(script) as server, pool(get_sock=sockets) as request:
        _, _, body = await request(b'GET', server.url)
        assert await anext(body) == b'first'
        go_on.set()
        if rest is None:
            await turns(20)
        else:
            await until(lambda: sent)
        await body.aclose()
        assert [sock.fileno() for sock in sockets.socks] == [-1]


@pytest.mark.parametrize('loop_name', LOOPS)
def test_a_body_that_is_closed_after_its_loop_closes_its_connection(loop_name):
    """Also if the rest is there. A loop that is closed would never hear of an idle connection."""
    def script(sock):
        receive_head(sock)
        sock.sendall(UNFINISHED)
        go_on.wait(PATIENCE)
        sock.sendall(98 * b'.')
        sent.set()
        receive_end(sock)

    go_on, sent, sockets = threading.Event(), threading.Event(), Sockets()
    request, close = Pool(get_sock=sockets, keep_alive_timeout=5)

    def run(function):
        with asyncio.Runner(loop_factory=LOOPS[loop_name]) as runner:
            return runner.run(function())

    with ThreadServer(script) as server:
        _, _, body = run(lambda: request(b'GET', server.url))
        go_on.set()
        sent.wait(PATIENCE)
        run(body.aclose)
        assert [sock.fileno() for sock in sockets.socks] == [-1]
        run(close)


@on_loops
async def test_a_long_body_that_is_closed_early_is_not_read_to_its_end():
    async def script(peer):
        await peer.read_head()
        with contextlib.suppress(ConnectionError):
            await peer.send(head(b'content-length: 1000000000'))
            while True:
                peer.writer.write(bytes(100_000))
                await peer.writer.drain()
                await asyncio.sleep(0)

    async with Server(script) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        assert await anext(body)
        await body.aclose()
        error = await failure(anext(body))
        assert isinstance(error.__cause__, ConnectionAbortedError)


# ----------------------------------------------------------------------------------------- phases


async def raising(host):
    raise LookupError('no such name')


async def failing():
    yield b'x'
    raise RuntimeError('of the caller')


@on_loops
async def test_an_error_tells_how_far_the_request_had_come():
    [bound] = bound_to('127.0.0.1')
    refused = f'http://127.0.0.1:{bound.getsockname()[1]}/'

    async def ends(peer):
        await peer.read_head()

    async def plain(peer):
        await peer.send(OK)

    async def cut_off(peer):
        await peer.read_head()
        await peer.send(UNFINISHED)

    async with Server(Answering(NO_CONTENT)) as server, Server(ends) as ending, \
            Server(cut_off) as cutting, Server(plain) as talking, pool(
                get_ssl_context=trusting, get_dns_resolver=resolving(raising)) as request:
        uploads = {'method': b'PUT', 'url': server.url, 'headers': of_length(2)}
        cases = {
            'refused': request(b'G T', server.url),
            'name': request(b'GET', 'http://a.test/'),
            'connect': request(b'GET', refused),
            'tls': request(b'GET', talking.url.replace('http', 'https')),
            'body': request(**uploads, body=failing),
            'head': request(b'GET', ending.url),
            'content': get(request, cutting.url),
        }
        for phase, asking in cases.items():
            with row(phase):
                error = await failure(asking)
                assert error.phase is Phase(phase)
                assert error.phase == phase
                assert f'{error.phase}' == phase
        for body in yielding_too_much, yielding_too_little:
            error = await failure(request(**uploads, body=body))
            assert error.phase is Phase.BODY
            assert type(error.__cause__) is ValueError
    bound.close()
    error = await failure(request(b'GET', server.url))
    assert error.phase is Phase.REFUSED
    assert list(Phase) == ['refused', 'name', 'pool', 'connect', 'tls', 'send', 'body', 'head',
                           'content']


def yielding_too_much():
    return yielding(b'abc')


def yielding_too_little():
    return yielding(b'a')


@on_loops
async def test_what_a_request_waits_for_is_like_a_future():
    """Whoever steps the coroutine of a request, as a task does, may ask what a future tells."""
    async with Server(Answering(OK)) as server, pool() as request:
        await get(request, server.url)
        coroutine = request(b'GET', server.url)
        waited_for = coroutine.send(None)
        assert asyncio.isfuture(waited_for)
        assert waited_for.get_loop() is asyncio.get_running_loop()
        assert not waited_for.done()
        assert repr(waited_for) == '<Arrival pending>'
        seen = []
        waited_for.add_done_callback(seen.append)
        waited_for.add_done_callback(print)
        waited_for.remove_done_callback(print)
        await until(lambda: seen)
        assert seen == [waited_for]
        assert waited_for.done()
        assert waited_for.exception() is None
        assert repr(waited_for) == '<Arrival done>'
        # As with a future, it is too late to cancel it, but not to hear of it.
        assert not waited_for.cancel()
        assert not waited_for.cancelled()
        waited_for.remove_done_callback(seen.append)
        waited_for.add_done_callback(seen.append)
        assert seen == [waited_for]
        await until(lambda: len(seen) == 2)
        with pytest.raises(StopIteration) as stopped:
            coroutine.send(None)
        code, _, body = stopped.value.value
        assert (code, await buffered(body)) == (b'200', b'ok')


@on_loops
async def test_a_task_keeps_its_context_after_a_request():
    """The context of a program is empty until it sets its first variable."""
    name = contextvars.ContextVar('name')

    async def ask(request, url):
        await get(request, url)
        token = name.set('mine')
        await asyncio.sleep(0)
        value = name.get(None)
        name.reset(token)
        return value

    async with Server(Answering(OK)) as server, pool() as request:
        context = contextvars.Context()
        task = asyncio.create_task(ask(request, server.url), context=context)
        assert await task == 'mine'
        assert name not in context


@on_loops
async def test_a_response_is_there_for_its_task_in_the_turn_in_which_it_comes():
    """Each turn of the loop would cost a tenth of a request."""
    turn = 0
    finished = None

    async def count():
        nonlocal turn
        while finished is None:
            turn += 1
            await asyncio.sleep(0)

    async with pool() as request:
        with socket.create_server(('127.0.0.1', 0)) as listener:
            url = f'http://127.0.0.1:{listener.getsockname()[1]}/'

            async def ask():
                nonlocal finished
                response = await get(request, url)
                finished = turn
                return response

            task = asyncio.create_task(ask())
            await turns(5)
            sock, _ = listener.accept()
            with sock:
                receive_head(sock)
                counting = asyncio.create_task(count())
                await turns(3)
                sock.sendall(OK)
                sent = turn
                await task
                await counting
            assert finished - sent <= 1
