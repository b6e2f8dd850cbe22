"""TLS: which certificates are accepted, how a handshake or a connection ends, what is said of
failures, and which sessions are resumed.
"""

import _ssl
import asyncio
import contextlib
import ctypes
import datetime
import functools
import inspect
import pathlib
import random
import re
import resource
import select
import socket
import ssl
import struct
import tempfile
import threading
import time

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import lowhaio
from lowhaio import (
    HttpConnectionClosedError,
    HttpDataError,
    HttpTlsError,
    Pool,
    buffered,
    streamed,
)
from tests.harness import (
    CHUNKED,
    CLOSE_DELIMITED,
    OK,
    PATIENCE,
    SCHEMES,
    TLS_1_2,
    TLS_1_3,
    TLS_VERSIONS,
    Answering,
    AnsweringInThreads,
    Server,
    Socks,
    ThreadServer,
    WantingToWrite,
    always,
    as_printed,
    authority,
    bound_to,
    certified,
    context_of,
    default_of,
    failed,
    get,
    handshake_plain,
    on_loops,
    on_loops_at_once,
    on_one_loop,
    peer_prefix,
    pool,
    private_authority,
    receive_end,
    receive_head,
    row,
    server_context,
    small_sending_sock,
    strict_context,
    trusting,
    turns,
    until,
    wanting_to_write,
)


# --------------------------------------------------------- certificates, handshakes and their ends

VERIFIED = {
    'an address': ('127.0.0.1', '127.0.0.1'),
    'a name': ('name.test', 'name.test'),
    'a name in capitals, with a dot': ('name.test', 'NAME.Test.'),
    'a name of a wildcard': ('*.name.test', 'www.name.test'),
    'one of many': ('other.test', 'name.test', 'name.test'),
    'a name in its own script': ('xn--bcher-kva.test', 'BÜCHER.test'),
}


@TLS_VERSIONS
@on_loops
async def test_a_certificate_for_the_host_is_accepted(version):
    options = {'get_ssl_context': trusting, 'get_dns_resolver': always('127.0.0.1')}
    for case, (*names, host) in VERIFIED.items():
        answering = Answering(OK)
        with row(case):
            async with (Server(answering, certified(*names, version=version)) as server,
                        pool(**options) as request):
                for _ in range(2):
                    assert (await get(request, f'https://{host}:{server.port}/'))[2] == b'ok'
            assert answering.connections == [0, 0]


LONG_AGO = datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC)

NOT_VERIFIED = {
    'another name': (('other.test',), {}, 'name.test', 'Hostname mismatch'),
    'an address for a name': (('127.0.0.1',), {}, 'name.test', 'Hostname mismatch'),
    'another address': (('127.0.0.2',), {}, '127.0.0.1', 'IP address mismatch'),
    'a name for an address': (('name.test',), {}, '127.0.0.1', 'IP address mismatch'),
    'a wildcard two labels up': (('*.test',), {}, 'www.name.test', 'Hostname mismatch'),
    'expired': (
        ('name.test',), {'not_before': LONG_AGO, 'not_after': LONG_AGO.replace(2002)},
        'name.test', 'certificate has expired'),
    'not valid yet': (
        ('name.test',),
        {'not_before': LONG_AGO.replace(2901), 'not_after': LONG_AGO.replace(2902)},
        'name.test', 'certificate is not yet valid'),
}


@on_loops
async def test_a_certificate_that_does_not_fit_is_refused():
    options = {'get_ssl_context': trusting, 'get_dns_resolver': always('127.0.0.1')}
    for case, (names, validity, host, text) in NOT_VERIFIED.items():
        answering = AnsweringInThreads()
        with row(case), ThreadServer(answering, certified(*names, **validity)) as server:
            async with pool(**options) as request:
                error = await failed(
                    request(b'GET', f'https://{host}:{server.port}/path?query'),
                    HttpTlsError, ssl.SSLCertVerificationError)
            assert str(error).startswith(
                f'GET https://{host}:{server.port} (peer 127.0.0.1:{server.port}): the TLS '
                'handshake failed: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: '
                + text)
            assert (error.reused, error.response_started) == (False, False)
            assert answering.socks == []


@on_loops
async def test_an_unknown_authority_is_refused_by_default():
    answering = AnsweringInThreads()
    with ThreadServer(answering, server_context()) as server:
        async with pool() as request:
            error = await failed(
                request(b'GET', server.url), HttpTlsError, ssl.SSLCertVerificationError)
    assert 'unable to get local issuer certificate' in str(error)
    assert answering.socks == []


@on_loops
async def test_the_server_is_told_the_canonical_name():
    told = []
    context = certified('name.test', 'xn--bcher-kva.test', '127.0.0.1')
    context.sni_callback = lambda sock, name, context: told.append(name)
    options = {'get_ssl_context': trusting, 'get_dns_resolver': always('127.0.0.1')}
    async with Server(Answering(OK), context) as server, pool(**options) as request:
        for host in ('NAME.test.', 'Bücher.test', '127.0.0.1'):
            await get(request, f'https://{host}:{server.port}/')
    assert told == ['name.test', 'xn--bcher-kva.test', None]  # RFC 6066 3: no addresses


@on_loops
async def test_the_ssl_context_is_got_once_at_the_first_https_request():
    got = []

    def get_ssl_context():
        got.append(trusting())
        return got[-1]

    options = {'get_ssl_context': get_ssl_context, 'keep_alive_timeout': 0}
    async with (Server(Answering(OK)) as plain, Server(Answering(OK), server_context()) as server,
                pool(**options) as request):
        await get(request, plain.url)
        assert got == []
        for _ in range(3):
            await get(request, server.url)
        await asyncio.gather(*[get(request, server.url) for _ in range(3)])
    assert len(got) == 1


@on_loops
async def test_an_ssl_context_that_can_not_be_made_is_an_error():
    contexts = [trusting()]

    def get_ssl_context():
        if not asked:
            asked.append(True)
            raise FileNotFoundError('no certificates')
        return contexts.pop()

    asked = []
    with ThreadServer(AnsweringInThreads(), server_context()) as server:
        async with pool(get_ssl_context=get_ssl_context) as request:
            await failed(
                request(b'GET', server.url), HttpTlsError, FileNotFoundError,
                f'{peer_prefix(server)}: the TLS handshake failed: FileNotFoundError: no '
                'certificates')
            assert (await get(request, server.url))[2] == b'ok'  # it was asked again


PROTOCOLS = {
    'the server knows none': (['http/1.1'], None, True),
    'both know http/1.1': (['http/1.1'], ['h2', 'http/1.1'], True),
    'both know http/1.0': (['http/1.0'], ['http/1.0'], True),
    'the server prefers http/1.1': (['h2', 'http/1.1'], ['http/1.1', 'h2'], True),
    'the server prefers h2': (['h2', 'http/1.1'], ['h2', 'http/1.1'], False),
}


@on_loops
async def test_only_http_1_is_spoken():
    for case, (offered, known, is_accepted) in PROTOCOLS.items():
        context = certified('127.0.0.1')
        if known:
            context.set_alpn_protocols(known)
        answering = AnsweringInThreads()
        with row(case), ThreadServer(answering, context) as server:
            async with pool(get_ssl_context=functools.partial(trusting, *offered)) as request:
                if is_accepted:
                    assert (await get(request, server.url))[2] == b'ok'
                    continue
                error = await failed(get(request, server.url), HttpTlsError, ssl.SSLError)
                assert str(error).startswith(f'{peer_prefix(server)}: the TLS handshake failed: ')
                assert str(error).endswith("the negotiated protocol must be http/1.1, got 'h2'")
                assert answering.socks == []


@on_loops
async def test_the_default_context_offers_http_1_1_alone():
    offered = []
    context = certified('127.0.0.1')
    context.set_alpn_protocols(['h2', 'http/1.1'])

    async def script(peer):
        offered.append(peer.writer.get_extra_info('ssl_object').selected_alpn_protocol())
        await Answering(OK)(peer)

    def get_ssl_context():
        default = inspect.signature(Pool).parameters['get_ssl_context'].default()
        assert default.verify_mode == ssl.CERT_REQUIRED
        assert default.check_hostname
        authority().configure_trust(default)
        return default

    async with (Server(script, context) as server,
                pool(get_ssl_context=get_ssl_context) as request):
        await get(request, server.url)
    assert offered == ['http/1.1']


def wanting_certificates(version=None):
    context = certified('127.0.0.1', version=version)
    context.verify_mode = ssl.CERT_REQUIRED
    authority().configure_trust(context)
    return context


@TLS_VERSIONS
@on_loops
async def test_a_client_certificate_is_sent(version):
    names = []

    async def script(peer):
        names.append(peer.writer.get_extra_info('peercert')['subjectAltName'])
        await Answering(OK)(peer)

    def get_ssl_context():
        context = trusting.__wrapped__()
        authority().issue_cert('client.test').configure_cert(context)
        return context

    async with (Server(script, wanting_certificates(version)) as server,
                pool(get_ssl_context=get_ssl_context) as request):
        assert (await get(request, server.url))[2] == b'ok'
    assert names == [(('DNS', 'client.test'),)]


@TLS_VERSIONS
@on_loops
async def test_a_client_certificate_that_is_missing_is_an_error(version):
    def script(listener, context):
        sock, _ = listener.accept()
        sock.settimeout(PATIENCE)
        with sock, context.wrap_socket(sock.dup(), server_side=True,
                                       do_handshake_on_connect=False) as tls:
            with contextlib.suppress(ssl.SSLError):
                tls.do_handshake()
            # Reads all, so that the alert is not overtaken by a reset.
            sock.shutdown(socket.SHUT_WR)
            receive_end(sock)

    with socket.create_server(('127.0.0.1', 0)) as listener:
        thread = threading.Thread(target=script, args=(listener, wanting_certificates(version)))
        thread.start()
        port = listener.getsockname()[1]
        async with pool(get_ssl_context=trusting) as request:
            # In TLS 1.3 the client's part of the handshake ends before the server looks at it.
            is_1_3 = version == TLS_1_3
            error = await failed(
                request(b'GET', f'https://127.0.0.1:{port}/'),
                HttpDataError if is_1_3 else HttpTlsError, ssl.SSLError)
        thread.join()
    prefix = f'GET https://127.0.0.1:{port} (peer 127.0.0.1:{port})'
    if is_1_3:
        prefix += ', reading the response head: SSLError: '
        assert 'CERTIFICATE_REQUIRED' in str(error)
    else:
        prefix += ': the TLS handshake failed: SSLError: '
        assert 'HANDSHAKE_FAILURE' in str(error)
    assert str(error).startswith(prefix)
    assert (error.reused, error.response_started) == (False, False)


def handshake_closing(sock):
    sock.recv(65536)


def handshake_closing_in_a_record(sock):
    sock.recv(65536)
    sock.sendall(b'\x16\x03\x03\x40\x00half of it')


def handshake_reset(sock):
    sock.recv(1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))


def handshake_silent(sock):
    receive_end(sock)


def handshake_trickling(sock):
    """The first byte of a long record after the other, as if it were to end one day."""
    sock.sendall(b'\x16\x03\x03\x40\x00')
    while True:
        sock.sendall(b'\x02')
        time.sleep(0.01)


LATE = 'TimeoutError: socket_timeout, 1 seconds, passed'

HANDSHAKES = {
    'no TLS': (handshake_plain, ssl.SSLError, 'SSLError: '),
    'closed': (handshake_closing, ssl.SSLEOFError, 'SSLEOFError: '),
    'closed in a record': (handshake_closing_in_a_record, ssl.SSLEOFError, 'SSLEOFError: '),
    'reset': (handshake_reset, ConnectionResetError, 'ConnectionResetError: '),
    'silent': (handshake_silent, TimeoutError, LATE),
    'trickling': (handshake_trickling, TimeoutError, LATE),
}


@on_loops
async def test_a_handshake_that_does_not_succeed_is_an_error():
    async def check(request, case):
        script, cause, text = HANDSHAKES[case]
        with row(case), ThreadServer(script) as server:
            url = f'https://127.0.0.1:{server.port}'
            error = await failed(request(b'GET', url), HttpTlsError, cause)
            assert str(error).startswith(
                f'GET {url} (peer 127.0.0.1:{server.port}): the TLS handshake failed: {text}')
            assert (error.reused, error.response_started) == (False, False)

    context = trusting()
    cpu, started = time.thread_time(), time.monotonic()
    async with pool(get_ssl_context=lambda: context, socket_timeout=1) as request:
        await asyncio.gather(*[check(request, case) for case in HANDSHAKES])
    # Most of the time it only waits.
    assert time.thread_time() - cpu < (time.monotonic() - started) / 2


@on_loops
async def test_a_handshake_that_fails_is_not_tried_on_another_address():
    socks = bound_to('127.0.0.1', '127.0.0.2')
    answering = AnsweringInThreads()
    options = {'get_dns_resolver': always('127.0.0.1', '127.0.0.2'), 'get_ssl_context': trusting}
    with (ThreadServer(answering, certified('other.test'), socks[0]) as first,
          ThreadServer(answering, certified('name.test'), socks[1]) as second):
        async with pool(**options) as request:
            url = f'https://name.test:{first.port}/'
            await failed(request(b'GET', url), HttpTlsError, ssl.SSLCertVerificationError)
            assert second.socks == []
            # The next request takes the next address.
            assert (await get(request, url))[2] == b'ok'
            assert answering.socks == second.socks


SIZED = b'HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nsome'
TRUNCATED = ', reading the response body: SSLEOFError: '

ENDS_OF_A_TLS_STREAM = {
    'to the end, with close_notify': (CLOSE_DELIMITED, True, None, None),
    'to the end, without': (CLOSE_DELIMITED, False, ssl.SSLEOFError, TRUNCATED),
    'content-length, with close_notify': (SIZED + b'more', True, None, None),
    'content-length, without': (SIZED + b'more', False, None, None),
    'chunked, with close_notify': (CHUNKED + b'0\r\n\r\n', True, None, None),
    'chunked, without': (CHUNKED + b'0\r\n\r\n', False, None, None),
    'content-length, cut short, with close_notify': (
        SIZED, True, EOFError, ', reading the response body: the peer closed the connection, '
        '4 bytes before the end that content-length told'),
    'content-length, cut short, without': (SIZED, False, ssl.SSLEOFError, TRUNCATED),
    'chunked, cut short, with close_notify': (
        CHUNKED, True, EOFError, ', reading the response body: the peer closed the connection in '
        'a chunk-size line'),
    'chunked, cut short, without': (CHUNKED, False, ssl.SSLEOFError, TRUNCATED),
    'head, cut short, with close_notify': (
        b'HTTP/1.1 200', True, EOFError, ", reading the response head: the peer closed the "
        "connection, after b'HTTP/1.1 200'"),
    'head, cut short, without': (
        b'HTTP/1.1 200', False, ssl.SSLEOFError, ', reading the response head: SSLEOFError: '),
    'head, none of it, with close_notify': (
        b'', True, EOFError, ', reading the response head: the peer closed the connection, after '
        'no byte of it'),
    'head, none of it, without': (
        b'', False, ssl.SSLEOFError, ', reading the response head: SSLEOFError: '),
}


@TLS_VERSIONS
@on_loops
async def test_a_body_to_the_end_of_the_stream_needs_close_notify(version):
    """Whoever cuts the connection can not forge it. Where the end is told, nobody needs it."""
    cases = iter(ENDS_OF_A_TLS_STREAM.values())

    def script(sock):
        receive_head(sock)
        response, says_goodbye, _, _ = next(cases)
        sock.sendall(response)
        if says_goodbye:
            sock.unwrap()

    with ThreadServer(script, certified('127.0.0.1', version=version)) as server:
        async with pool(get_ssl_context=trusting, keep_alive_timeout=0) as request:
            for response, _, cause, text in ENDS_OF_A_TLS_STREAM.values():
                if cause is None:
                    assert (await get(request, server.url))[2] in (b'some', b'somemore')
                    continue
                error = await failed(get(request, server.url), HttpConnectionClosedError, cause)
                assert str(error).startswith(peer_prefix(server) + text)
                assert error.response_started == bool(response)


@TLS_VERSIONS
@on_loops
async def test_closing_says_goodbye_to_the_server(version):
    ends = []

    def script(sock):
        receive_head(sock)
        sock.sendall(OK)
        ends.append(receive_end(sock))  # raises SSLEOFError without close_notify

    with ThreadServer(script, certified('127.0.0.1', version=version)) as server:
        for _ in range(2):
            async with pool(get_ssl_context=trusting) as request:
                await get(request, server.url)
        await until(lambda: len(ends) == 2)
    assert ends == [b'', b'']


@TLS_VERSIONS
@on_loops
async def test_large_bodies_go_both_ways_over_tls(version):
    """In records of 16 KiB, of which a short read leaves bytes that no selector sees."""
    data = random.Random(1).randbytes(500_000)

    async def script(peer):
        for _ in range(2):
            await peer.read_head()
            received = await peer.read(len(data))
            peer.writer.write(
                b'HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b' % (len(data), received))
            await peer.writer.drain()
        await peer.closed()

    context = certified('127.0.0.1', version=version)
    for recv_bufsize in (1000, 16384, 65536):
        options = {'get_ssl_context': trusting, 'recv_bufsize': recv_bufsize}
        async with Server(script, context) as server, pool(**options) as request:
            for _ in range(2):
                _, _, body = await request(
                    b'POST', server.url, body=streamed(data),
                    headers=((b'content-length', b'%d' % len(data)),))
                assert await buffered(body) == data
            assert len(server.peers) == 1


@SCHEMES
@on_loops
async def test_a_response_is_read_a_few_bytes_at_a_time(scheme):
    response = CHUNKED + b'4\r\nmore\r\n0\r\nx-trailer: 1\r\n\r\n'
    for recv_bufsize in (1, 7, len(response)):
        answering = Answering(response)
        options = {'get_ssl_context': trusting, 'recv_bufsize': recv_bufsize}
        async with Server(answering, context_of(scheme)) as server, pool(**options) as request:
            for _ in range(3):
                _, _, body = await request(b'GET', server.url)
                assert await buffered(body) == b'somemore'
                assert body.trailers == ((b'x-trailer', b'1'),)
        assert answering.connections == [0, 0, 0]


@functools.cache
def trusting_with_large_certificate(names):
    """With a client's certificate of 64 bytes a name. To send one that is larger than the
    buffers of its socket, or when they are full, the client has to wait for the server."""
    context = trusting.__wrapped__()
    context.post_handshake_auth = True
    certificate = authority().issue_cert(*[f'{number:060}.test' for number in range(names)])
    certificate.configure_cert(context)
    return context


@TLS_VERSIONS
@on_loops
async def test_a_handshake_may_have_to_wait_to_send(version):
    lengths = []

    def script(sock):
        lengths.append(len(sock.getpeercert(binary_form=True)))
        receive_head(sock)
        sock.sendall(OK)
        receive_end(sock)

    with ThreadServer(script, wanting_certificates(version)) as server:
        server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        options = {'get_ssl_context': lambda: trusting_with_large_certificate(800),
                   'get_sock': small_sending_sock}
        async with pool(**options) as request:
            assert (await get(request, server.url))[2] == b'ok'
    assert lengths[0] > 40_000


@on_loops
async def test_a_final_response_in_the_record_of_an_interim_one_is_read_however_small_the_reads():
    interim = b'HTTP/1.1 103 Early\r\n\r\n'
    async with (Server(Answering(interim + OK), server_context()) as server,
                pool(get_ssl_context=trusting, recv_bufsize=len(interim)) as request):
        assert (await get(request, server.url))[2] == b'ok'


@on_loops
async def test_a_record_that_has_come_in_part_is_waited_for():
    async def script(peer):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = server_context().wrap_bio(incoming, outgoing, server_side=True)

        async def until_done(function, *args):
            while True:
                try:
                    return function(*args)
                except ssl.SSLWantReadError:
                    await peer.send(outgoing.read())
                    incoming.write(await peer.reader.read(65536))

        await until_done(tls.do_handshake)
        assert (await until_done(tls.read, 65536)).endswith(b'\r\n\r\n')
        tls.write(OK[:-1])
        await peer.send(outgoing.read())
        tls.write(OK[-1:])
        record = outgoing.read()
        await has_head.wait()
        await peer.send(record[:7])
        await is_reading.wait()
        await peer.send(record[7:])
        await peer.closed()

    def get_sock(family):
        socks.append(socket.socket(family))
        # TLS takes the socket over, but not its descriptor.
        poller.register(socks[0].fileno(), select.POLLIN)
        return socks[0]

    socks = []
    poller = select.poll()
    has_head, is_reading = asyncio.Event(), asyncio.Event()
    async with Server(script) as server, pool(
            get_sock=get_sock, get_ssl_context=trusting) as request:
        _, _, body = await request(b'GET', f'https://127.0.0.1:{server.port}/')
        assert await anext(body) == b'o'
        has_head.set()
        await until(lambda: poller.poll(0))
        reading = asyncio.create_task(buffered(body))
        await turns(5)
        assert not reading.done()
        is_reading.set()
        assert await reading == b'k'


@pytest.mark.parametrize('wants', [1, 2, 3])
@on_loops
async def test_reading_a_head_may_have_to_wait_to_send(wants):
    async with (Server(Answering(OK), server_context()) as server,
                pool(get_ssl_context=wanting_to_write) as request):
        WantingToWrite.wants = wants
        assert (await get(request, server.url))[2] == b'ok'
        assert WantingToWrite.wants == 0


@pytest.mark.parametrize('wants', [1, 2, 3])
@pytest.mark.parametrize('is_there', [False, True])
@on_loops
async def test_reading_a_body_may_have_to_wait_to_send(wants, is_there):
    async def script(peer):
        await peer.read_head()
        await peer.send(OK[:-1])
        if not is_there:
            await is_waiting.wait()
        await peer.send(OK[-1:])
        is_sent.set()
        await peer.closed()

    is_waiting, is_sent = asyncio.Event(), asyncio.Event()
    async with (Server(script, server_context()) as server,
                pool(get_ssl_context=wanting_to_write) as request):
        _, _, body = await request(b'GET', server.url)
        assert await anext(body) == b'o'
        if is_there:
            await is_sent.wait()
        WantingToWrite.wants = wants
        reading = asyncio.create_task(buffered(body))
        await turns(5)
        is_waiting.set()
        assert await reading == b'k'
        assert WantingToWrite.wants == 0


class Openssl:
    """The server's end of TLS, with what the ssl module does not offer."""

    FILETYPE_PEM = 1
    MAX_PROTO_VERSION = 124
    KEY_UPDATE_REQUESTED = 1

    def __init__(self, sock, version):
        sock.settimeout(None)
        self.context = self.call('SSL_CTX_new', self.call('TLS_server_method'))
        self.call('SSL_CTX_ctrl', self.context, self.MAX_PROTO_VERSION, int(version), None)
        chain = authority().issue_cert('127.0.0.1').private_key_and_cert_chain_pem
        with chain.tempfile() as path:
            self.call('SSL_CTX_use_certificate_chain_file', self.context, path.encode())
            self.call('SSL_CTX_use_PrivateKey_file', self.context, path.encode(),
                      self.FILETYPE_PEM)
        self.ssl = self.call('SSL_new', self.context)
        self.call('SSL_set_fd', self.ssl, sock.fileno())
        self.call('SSL_accept', self.ssl)

    @staticmethod
    @functools.cache
    def library():
        try:
            library = ctypes.CDLL(_ssl.__file__)
            functions = [getattr(library, name) for name in (
                'SSL_CTX_new', 'TLS_server_method', 'SSL_new', 'SSL_renegotiate')]
        except (AttributeError, OSError):
            return None
        for function in functions:
            function.restype = ctypes.c_void_p
        library.SSL_renegotiate.restype = ctypes.c_int
        return library

    def call(self, name, *args):
        """Call a function of OpenSSL, in which a result of 0 or less is a failure."""
        result = getattr(self.library(), name)(
            *[ctypes.c_void_p(arg) if isinstance(arg, int) and arg > 2 ** 16 else arg
              for arg in args])
        if result <= 0:
            raise ConnectionError(f'{name} failed with {result}')
        return result

    def receive_head(self):
        data = b''
        buffer = ctypes.create_string_buffer(65536)
        while not data.endswith(b'\r\n\r\n'):
            length = self.call('SSL_read', self.ssl, buffer, len(buffer))
            data += buffer.raw[:length]
        return data

    def send(self, data):
        self.call('SSL_write', self.ssl, data, len(data))

    def free(self):
        self.library().SSL_free(ctypes.c_void_p(self.ssl))
        self.library().SSL_CTX_free(ctypes.c_void_p(self.context))


def send_hello_request(tls):
    tls.call('SSL_renegotiate', tls.ssl)
    tls.call('SSL_do_handshake', tls.ssl)


def send_key_update(tls):
    tls.call('SSL_key_update', tls.ssl, Openssl.KEY_UPDATE_REQUESTED)
    tls.call('SSL_do_handshake', tls.ssl)


def send_session_ticket(tls):
    tls.call('SSL_new_session_ticket', tls.ssl)
    tls.call('SSL_do_handshake', tls.ssl)


OWN_MESSAGES = {
    'a renegotiation': (send_hello_request, TLS_1_2),
    'a key update': (send_key_update, TLS_1_3),
    'a session ticket': (send_session_ticket, TLS_1_3),
}


@pytest.mark.parametrize('is_blocked', [False, True], ids=['loop free', 'loop blocked'])
@pytest.mark.parametrize('case', OWN_MESSAGES)
@on_loops
async def test_what_tls_itself_sends_does_not_close_an_idle_connection(case, is_blocked):
    if Openssl.library() is None:
        pytest.skip('the ssl module keeps its OpenSSL to itself')
    send, version = OWN_MESSAGES[case]
    is_idle, is_sent, go_on = (threading.Event() for _ in range(3))
    results = []

    def script(sock):
        tls = Openssl(sock, version)
        try:
            tls.receive_head()
            tls.send(OK)
            is_idle.wait(PATIENCE)
            send(tls)
            is_sent.set()
            go_on.wait(PATIENCE)
            tls.receive_head()
            tls.send(OK)
            receive_end(sock)
        finally:
            tls.free()

    with ThreadServer(script) as server:
        async with pool(get_ssl_context=trusting) as request:
            url = f'https://127.0.0.1:{server.port}/'
            await get(request, url)
            is_idle.set()
            if is_blocked:
                is_sent.wait(PATIENCE)
                time.sleep(0.005)  # so that it is looked at, and not by its reader
            else:
                await until(is_sent.is_set)
                await turns(5)
            task = asyncio.create_task(get(request, url))
            # A renegotiation goes on while the request is sent: the write wants to read.
            await turns(5)
            go_on.set()
            results.append((await task)[2])
        assert results == [b'ok']
        assert len(server.socks) == 1


@on_loops_at_once
async def test_a_renegotiation_in_which_the_server_falls_silent_is_an_error():
    if Openssl.library() is None:
        pytest.skip('the ssl module keeps its OpenSSL to itself')
    is_idle, is_sent, is_over = (threading.Event() for _ in range(3))

    def script(sock):
        tls = Openssl(sock, TLS_1_2)
        try:
            tls.receive_head()
            tls.send(OK)
            is_idle.wait(PATIENCE)
            send_hello_request(tls)
            is_sent.set()
            is_over.wait(PATIENCE)
        finally:
            tls.free()

    with ThreadServer(script) as server:
        async with pool(get_ssl_context=trusting, socket_timeout=0.5) as request:
            url = f'https://127.0.0.1:{server.port}'
            await get(request, url)
            await asyncio.sleep(0.51)  # its time is that of the request
            is_idle.set()
            await until(is_sent.is_set)
            error = await failed(
                request(b'GET', url), HttpDataError, TimeoutError,
                f'GET {url} (peer 127.0.0.1:{server.port}), sending the request: TimeoutError: '
                'socket_timeout, 0.5 seconds, passed')
            assert (error.reused, error.response_started) == (True, False)
            is_over.set()


# -------------------------------------------------------------------------------- sessions resumed


class Resuming:
    """A script that answers, and keeps of each connection whether its TLS session was resumed.
    It answers no sooner than a number of connections have come."""

    def __init__(self, together=1):
        self.together = together
        self.resumed = []

    async def __call__(self, peer):
        self.resumed.append(peer.writer.get_extra_info('ssl_object').session_reused)
        await until(lambda: len(self.resumed) >= self.together)
        await Answering(OK)(peer)


class ResumingInThreads:
    """As `Resuming`. The first responses may be others."""

    def __init__(self, *first):
        self.first = list(first)
        self.resumed = []

    def __call__(self, sock):
        self.resumed.append(sock.session_reused)
        receive_head(sock)
        sock.sendall(self.first.pop(0) if self.first else OK)
        receive_end(sock)


def own_context(version=None, names=('127.0.0.1', 'a.test', 'b.test')):
    """With ticket keys of its own."""
    return certified(*names, version=version)


RESUMING = {'get_ssl_context': trusting, 'keep_alive_timeout': 0}


@TLS_VERSIONS
@on_loops
async def test_the_tls_session_of_an_origin_is_resumed(version):
    script = Resuming()
    async with Server(script, own_context(version)) as server, pool(**RESUMING) as request:
        for _ in range(3):
            assert (await get(request, server.url))[2] == b'ok'
        assert script.resumed == [False, True, True]
        # By several connections that are made at the same time, too.
        script.together = 6
        await asyncio.gather(*[get(request, server.url) for _ in range(3)])
    assert script.resumed == [False] + [True] * 5


@TLS_VERSIONS
@on_loops
async def test_there_is_no_session_to_resume_before_the_first_response(version):
    script = Resuming(together=3)
    async with Server(script, own_context(version)) as server, pool(**RESUMING) as request:
        await asyncio.gather(*[get(request, server.url) for _ in range(3)])
        assert script.resumed == [False] * 3
        await get(request, server.url)
    assert script.resumed == [False] * 3 + [True]


@TLS_VERSIONS
@on_loops
async def test_the_session_of_a_connection_without_a_response_is_not_resumed(version):
    script = ResumingInThreads(b'HTTP/2 200\r\n\r\n')
    with ThreadServer(script, own_context(version)) as server:
        async with pool(**RESUMING) as request:
            await failed(get(request, server.url), HttpDataError, ValueError)
            for _ in range(2):
                assert (await get(request, server.url))[2] == b'ok'
    assert script.resumed == [False, False, True]


@TLS_VERSIONS
@on_loops
async def test_a_session_is_never_that_of_another_origin_or_pool(version):
    context = own_context(version)
    options = {**RESUMING, 'get_dns_resolver': always('127.0.0.1')}
    script = Resuming()
    async with Server(script, context) as one, Server(script, context) as other:
        urls = [f'https://{host}:{server.port}/'
                for server in (one, other) for host in ('127.0.0.1', 'a.test', 'b.test')]
        for _ in range(2):
            async with pool(**options) as request:
                for is_resumed in (False, True):
                    for url in urls:
                        await get(request, url)
                        assert script.resumed.pop() == is_resumed
    assert script.resumed == []


@TLS_VERSIONS
@on_loops
async def test_a_session_that_the_server_does_not_know_is_followed_by_a_new_one(version):
    script = ResumingInThreads()
    with ThreadServer(script, own_context(version)) as server:
        async with pool(**RESUMING) as request:
            for number in range(6):
                if number == 2:
                    server.context = own_context(version)
                assert (await get(request, server.url))[2] == b'ok'
    assert script.resumed == [False, True, False, True, True, True]


class Sessions:
    """Keeps the sessions that clients' sockets of its context read and offer, in their order."""

    def __init__(self):
        class Counting(ssl.SSLSocket):
            @property
            def session(self):
                read.append(super().session)
                return read[-1]

            @session.setter
            def session(self, session):
                offered.append(session)
                ssl.SSLSocket.session.fset(self, session)

        self.read = read = []
        self.offered = offered = []
        # A context of its own: that of the other tests would keep the class.
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority().configure_trust(self.context)
        self.context.sslsocket_class = Counting

    async def connect(self, server, script, number, forgets=()):
        """The connections of those requests that resumed a session. Before some of them the
        server forgets the keys of its tickets."""
        async with pool(keep_alive_timeout=0, get_ssl_context=lambda: self.context) as request:
            for index in range(number):
                if index in forgets:
                    server.context = own_context(self.context.minimum_version)
                assert (await get(request, server.url))[2] == b'ok'
        return [index for index, is_resumed in enumerate(script.resumed) if is_resumed]


@pytest.mark.parametrize('is_lost, forgets, reads, resumed', [
    (True, (), [0], range(1, 8)),
    (True, range(8), [0, 1, 3, 7], ()),
    (True, (1,), [0, 1], range(2, 8)),
    (True, (2, 5), [0, 2, 6], (1, 3, 4, 7)),
    (True, (2, 3), [0, 2, 4], (1, 5, 6, 7)),
    (False, (), range(8), range(1, 8)),
    (False, range(8), range(8), ()),
    (False, (1,), range(8), range(2, 8)),
    (False, (2, 5), range(8), (1, 3, 4, 6, 7)),
    (False, (2, 3), range(8), (1, 4, 5, 6, 7)),
])
@TLS_VERSIONS
@on_loops
async def test_a_session_is_read_again_after_it_was_refused(
        version, monkeypatch, is_lost, forgets, reads, resumed):
    """From each connection, or less and less often where CPython loses memory each time."""
    monkeypatch.setattr(lowhaio, 'SESSIONS_ARE_LOST', is_lost)
    script = ResumingInThreads()
    sessions = Sessions()
    sessions.context.minimum_version = version
    with ThreadServer(script, own_context(version)) as server:
        assert await sessions.connect(server, script, 8, forgets) == list(resumed)
    assert len(sessions.read) == len(reads)


@TLS_VERSIONS
@on_loops
async def test_where_no_memory_is_lost_a_session_is_that_of_the_last_connection(
        version, monkeypatch):
    """A ticket may be good for once."""
    monkeypatch.setattr(lowhaio, 'SESSIONS_ARE_LOST', False)
    script = ResumingInThreads()
    sessions = Sessions()
    with ThreadServer(script, own_context(version)) as server:
        assert await sessions.connect(server, script, 5) == [1, 2, 3, 4]
    assert len(sessions.read) == 5
    for offered, read in zip(sessions.offered, sessions.read[:-1], strict=True):
        assert offered is read


@TLS_VERSIONS
@on_one_loop
async def test_a_session_that_was_of_much_use_is_followed_by_the_next_at_once(
        version, monkeypatch):
    monkeypatch.setattr(lowhaio, 'SESSIONS_ARE_LOST', True)
    script = ResumingInThreads()
    sessions = Sessions()
    sessions.context.minimum_version = version
    # The first ones served too few connections to be worth reading the next at once.
    forgets = (1, 2, *range(21, 100, 17))
    with ThreadServer(script, own_context(version)) as server:
        resumed = await sessions.connect(server, script, 100, forgets)
    assert sorted({*range(100)} - {*resumed}) == [0, 1, 2, 3, *range(21, 100, 17)]
    assert len(sessions.read) == 3 + len(range(21, 100, 17))


@TLS_VERSIONS
@on_one_loop
async def test_a_server_that_never_resumes_costs_few_sessions(version, monkeypatch):
    monkeypatch.setattr(lowhaio, 'SESSIONS_ARE_LOST', True)
    monkeypatch.setattr(lowhaio, 'MAX_SESSION_PAUSE', 7)
    script = ResumingInThreads()
    sessions = Sessions()
    sessions.context.minimum_version = version
    with ThreadServer(script, own_context(version)) as server:
        assert await sessions.connect(server, script, 34, range(34)) == []
    # Of the connections 0, 1, 3, 7, 15, and then of each eighth.
    assert len(sessions.read) == 7


@pytest.mark.parametrize('is_lost', [True, False])
@pytest.mark.parametrize('version, options, is_resumed', [
    (TLS_1_2, {'options': ssl.OP_NO_TICKET}, True),
    (TLS_1_3, {'options': ssl.OP_NO_TICKET}, True),
    (TLS_1_3, {'num_tickets': 0}, False),
    (TLS_1_3, {'num_tickets': 1}, True),
    (TLS_1_3, {'num_tickets': 7}, True),
])
@on_loops
async def test_a_session_is_resumed_whatever_tickets_the_server_sends(
        version, options, is_resumed, is_lost, monkeypatch):
    monkeypatch.setattr(lowhaio, 'SESSIONS_ARE_LOST', is_lost)
    # It ends TLS as it should, or OpenSSL would forget sessions that are not in tickets.
    script = Resuming()
    context = own_context(version)
    for name, value in options.items():
        setattr(context, name, value)
    async with Server(script, context) as server:
        assert await Sessions().connect(server, script, 4) == ([1, 2, 3] if is_resumed else [])


def test_a_session_is_read_from_each_connection_if_this_python_loses_no_memory():
    """Some 6 KB each time."""
    incoming, outgoing = (ssl.MemoryBIO(), ssl.MemoryBIO()), (ssl.MemoryBIO(), ssl.MemoryBIO())
    ends = [own_context(TLS_1_2).wrap_bio(*incoming, server_side=True),
            trusting().wrap_bio(*outgoing, server_hostname='127.0.0.1')]
    for _ in range(3):
        for end, (_, sent), (received, _) in zip(
                ends, (incoming, outgoing), (outgoing, incoming), strict=True):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
            received.write(sent.read())
    assert ends[1].session is not None

    # What is in memory now: the most that has ever been there may be that of another test.
    statm = pathlib.Path('/proc/self/statm')
    if not statm.exists():
        pytest.skip('this system does not tell how much memory a process has')

    def pages():
        return int(statm.read_text().split()[1])

    def growth(number):
        before = pages()
        for _ in range(number):
            ends[1].session  # noqa: B018
        return (pages() - before) * resource.getpagesize()

    growth(100)
    # What other tests have freed would be used first, and it counts already.
    getattr(ctypes.CDLL(None), 'malloc_trim', lambda _: None)(0)
    assert (growth(1000) > 2_000_000) == lowhaio.SESSIONS_ARE_LOST


@TLS_VERSIONS
@on_loops
async def test_a_session_may_be_refused_by_several_connections_at_the_same_time(version):
    script = ResumingInThreads()
    with ThreadServer(script, own_context(version)) as server:
        async with pool(**RESUMING) as request:
            for _ in range(2):
                await get(request, server.url)
            server.context = own_context(version)
            await asyncio.gather(*[get(request, server.url) for _ in range(2)])
            await get(request, server.url)
    assert script.resumed == [False, True, False, False, True]


@TLS_VERSIONS
@on_loops
async def test_a_session_is_forgotten_when_a_handshake_fails(version):
    script = ResumingInThreads()
    context = own_context(version)
    with ThreadServer(script, context) as server:
        async with pool(**RESUMING) as request:
            for _ in range(2):
                await get(request, server.url)
            server.context = own_context(version, names=('other.test',))
            await failed(
                get(request, server.url), HttpTlsError, ssl.SSLCertVerificationError)
            server.context = context
            for _ in range(2):
                assert (await get(request, server.url))[2] == b'ok'
    assert script.resumed == [False, True, False, True]


# ------------------------------------------------------- certificates and servers that are refused


def context_for_common_name(name):
    """A server's context whose certificate has the name where it was before RFC 2818."""
    key = ec.generate_private_key(ec.SECP256R1())
    issuer_key = serialization.load_pem_private_key(
        authority().private_key_pem.bytes(), password=None)
    issuer = x509.load_pem_x509_certificate(authority().cert_pem.bytes())
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(issuer_key, hashes.SHA256()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption()) + certificate.public_bytes(serialization.Encoding.PEM)
    with tempfile.NamedTemporaryFile() as file:
        file.write(pem)
        file.flush()
        context.load_cert_chain(file.name)
    return context


@on_loops
async def test_a_common_name_is_not_where_an_address_is_looked_for():
    answering = AnsweringInThreads()
    with ThreadServer(answering, context_for_common_name('127.0.0.1')) as server:
        async with pool(get_ssl_context=trusting) as request:
            error = await failed(
                request(b'GET', server.url + 'path?query'), HttpTlsError,
                ssl.SSLCertVerificationError)
    assert str(error).startswith(
        f'{peer_prefix(server)}: the TLS handshake failed: [SSL: CERTIFICATE_VERIFY_FAILED] '
        "certificate verify failed: IP address mismatch, certificate is not valid for '127.0.0.1'")
    assert answering.socks == []


@on_loops
async def test_by_default_a_common_name_is_not_where_a_name_is_looked_for(monkeypatch):
    answering = AnsweringInThreads()
    with tempfile.NamedTemporaryFile() as file, \
            ThreadServer(answering, context_for_common_name('name.test')) as server:
        file.write(authority().cert_pem.bytes())
        file.flush()
        monkeypatch.setenv('SSL_CERT_FILE', file.name)
        async with pool(get_dns_resolver=always('127.0.0.1')) as request:
            await failed(
                request(b'GET', f'https://name.test:{server.port}/'), HttpTlsError,
                ssl.SSLCertVerificationError)
    assert answering.socks == []


# What a private authority or its certificates lack, and what OpenSSL says to that.
LACKING = {
    x509.KeyUsage: 'CA cert does not include key usage extension',
    x509.SubjectKeyIdentifier: 'Missing Subject Key Identifier',
    x509.AuthorityKeyIdentifier: 'Missing Authority Key Identifier',
    x509.BasicConstraints: 'Basic Constraints of CA cert not marked critical',
}

STRICT_HINT = (' (Python 3.13 and later ask for what RFC 5280 does: issue the certificate anew, '
               'or clear ssl.VERIFY_X509_STRICT in the verify_flags of your own context)')


@pytest.mark.parametrize('left_out', LACKING)
@on_loops
async def test_a_private_authority_that_is_too_lax_for_new_pythons_says_what_to_do(left_out):
    root, server_side = private_authority('name.test', left_out)

    def lax_context():
        context = strict_context(root)
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return context

    with ThreadServer(AnsweringInThreads(), server_side) as server:
        url = f'https://name.test:{server.port}/'
        options = {'get_dns_resolver': always('127.0.0.1')}
        async with pool(get_ssl_context=lambda: strict_context(root), **options) as request:
            error = await failed(request(b'GET', url), HttpTlsError, ssl.SSLCertVerificationError)
            assert as_printed(error) == (
                f'HttpTlsError: GET {url[:-1]} (peer 127.0.0.1:{server.port}): the TLS handshake '
                'failed: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: '
                f'{LACKING[left_out]}{STRICT_HINT}')
        async with pool(get_ssl_context=lax_context, **options) as request:
            assert (await get(request, url))[2] == b'ok'


@on_loops
async def test_a_private_authority_as_the_readme_makes_it_is_trusted_by_new_pythons():
    root, server_side = private_authority('name.test')
    with ThreadServer(AnsweringInThreads(), server_side) as server:
        async with pool(get_ssl_context=lambda: strict_context(root),
                        get_dns_resolver=always('127.0.0.1')) as request:
            assert (await get(request, f'https://name.test:{server.port}/'))[2] == b'ok'


@pytest.mark.parametrize('least, expected', [
    (ssl.TLSVersion.MINIMUM_SUPPORTED, TLS_1_2), (TLS_1_2, TLS_1_2), (TLS_1_3, TLS_1_3)])
def test_the_least_version_of_tls_is_1_2_or_what_the_system_says(monkeypatch, least, expected):
    """Debian's builds of Python leave it to OpenSSL's configuration."""
    def create_default_context():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = least
        return context

    monkeypatch.setattr(ssl, 'create_default_context', create_default_context)
    assert default_of('get_ssl_context')().minimum_version == expected


@on_loops
async def test_an_error_tells_that_a_server_does_not_speak_tls():
    sent = []

    async def answering_plain(peer):
        # Whatever comes is a bad request, as to a server of plain HTTP.
        sent.append(await peer.reader.read(65536))
        await peer.send(b'HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n')
        sent.append(await peer.closed())

    async def greeting(peer):
        await peer.send(b'220 smtp.test ESMTP\r\n')
        sent.append(await peer.closed())

    for script in (answering_plain, greeting):
        async with Server(script) as server, pool(get_ssl_context=trusting) as request:
            sent.clear()
            error = await failed(
                request(b'GET', f'https://127.0.0.1:{server.port}/path'), HttpTlsError,
                ssl.SSLError)
            assert str(error).startswith(
                f'GET https://127.0.0.1:{server.port} (peer 127.0.0.1:{server.port}): the TLS '
                'handshake failed: SSLError: [SSL: ')
            assert 'wrong version number' in str(error)
            assert str(error).endswith(' (the peer does not speak TLS)')
            await until(lambda: sent)
            assert b'GET' not in b''.join(sent)
            assert b'/path' not in b''.join(sent)


class RefusingTls:
    """A script of a plain socket, for a client that the context refuses. It does what TLS asks
    for, and then takes all that comes, so that no reset overtakes what it said."""

    def __init__(self, context):
        self.context = context
        self.reasons = []
        self.data = b''

    def __call__(self, sock):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = self.context.wrap_bio(incoming, outgoing, server_side=True)
        while True:
            try:
                tls.do_handshake()
                self.data += tls.read()
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(65536))
            except ssl.SSLError as error:
                self.reasons.append(error.reason)
                sock.sendall(outgoing.read())
                break
        sock.shutdown(socket.SHUT_WR)
        receive_end(sock)


REFUSED_HANDSHAKE = (' (the peer refused the handshake: it may share no version, cipher or group, '
                     'or want a client certificate)')

LARGE_UPLOAD = bytes(10_000_000)

UNCERTIFIED = {
    'GET': {},
    'PUT': {'headers': ((b'content-length', b'%d' % len(LARGE_UPLOAD)),),
            'body': streamed(LARGE_UPLOAD)},
}


@TLS_VERSIONS
@on_loops
async def test_a_request_without_the_certificate_that_the_server_wants_is_never_heard(version):
    script = RefusingTls(wanting_certificates(version))
    with ThreadServer(script) as server:
        origin = f'https://127.0.0.1:{server.port}'
        async with pool(get_ssl_context=trusting) as request:
            for method, options in UNCERTIFIED.items():
                with row(method):
                    error = await failed(
                        request(method.encode(), origin + '/path', **options),
                        HttpDataError if version == TLS_1_3 else HttpTlsError, ssl.SSLError)
                    assert str(error).startswith(
                        f'{method} {origin} (peer 127.0.0.1:{server.port})')
                    # The client's part of a handshake of TLS 1.3 ends before the server has
                    # looked at it.
                    assert ('CERTIFICATE_REQUIRED' if version == TLS_1_3 else
                            'the TLS handshake failed: SSLError: [SSL: SSLV3_ALERT_HANDSHAKE_'
                            'FAILURE]') in str(error)
                    assert str(error).endswith(
                        ' (the peer wants a client certificate)' if version == TLS_1_3 else
                        REFUSED_HANDSHAKE)
                    assert (error.reused, error.response_started) == (False, False)
    assert script.reasons == ['PEER_DID_NOT_RETURN_A_CERTIFICATE'] * 2
    assert script.data == b''


def limited(context, version=None, ciphers=None, group=None):
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if ciphers is not None:
        context.set_ciphers(ciphers)
    if group is not None:
        context.set_ecdh_curve(group)
    return context


def with_unknown_certificate():
    """A client's context with a certificate of an authority that the server does not know."""
    context = trusting.__wrapped__()
    trustme.CA().issue_cert('client.test').configure_cert(context)
    return context


FAILED = ': the TLS handshake failed: SSLError: [SSL: '
AFTER_HANDSHAKE = ', reading the response head: SSLError: [SSL: '
OTHER_VERSION = ' (the peer allows none of the TLS versions of the SSL context)'
UNKNOWN_CERTIFICATE = " (the peer does not know the client certificate's authority)"

# What server and client allow, or have, and how the message of the error begins and ends.
NOT_IN_COMMON = {
    'versions': ({'version': TLS_1_2}, {'version': TLS_1_3}, FAILED, OTHER_VERSION),
    'versions, of which the server wants the newer': (
        {'version': TLS_1_3}, {'version': TLS_1_2}, FAILED, OTHER_VERSION),
    'ciphers': ({'version': TLS_1_2, 'ciphers': 'ECDHE+AES256'},
                {'version': TLS_1_2, 'ciphers': 'ECDHE+AES128'}, FAILED, REFUSED_HANDSHAKE),
    'groups in TLS 1.2': ({'version': TLS_1_2, 'group': 'secp384r1'},
                          {'version': TLS_1_2, 'group': 'prime256v1'}, FAILED, REFUSED_HANDSHAKE),
    'groups in TLS 1.3': ({'version': TLS_1_3, 'group': 'secp384r1'},
                          {'version': TLS_1_3, 'group': 'prime256v1'}, FAILED, REFUSED_HANDSHAKE),
}

UNWANTED = {
    'no certificate, TLS 1.2': (TLS_1_2, False, FAILED, REFUSED_HANDSHAKE),
    'no certificate, TLS 1.3': (
        TLS_1_3, False, AFTER_HANDSHAKE, ' (the peer wants a client certificate)'),
    'unknown certificate, TLS 1.2': (TLS_1_2, True, FAILED, UNKNOWN_CERTIFICATE),
    'unknown certificate, TLS 1.3': (TLS_1_3, True, AFTER_HANDSHAKE, UNKNOWN_CERTIFICATE),
}


@on_loops
async def test_a_hint_for_a_refused_handshake_says_only_what_can_be():
    """Of the reasons for a failed handshake, its alert names some, and does not tell others."""
    cases = {name: (limited(certified('127.0.0.1'), **server),
                    limited(trusting.__wrapped__(), **client), begin, end)
             for name, (server, client, begin, end) in NOT_IN_COMMON.items()}
    for name, (version, has_certificate, begin, end) in UNWANTED.items():
        client = with_unknown_certificate() if has_certificate else trusting()
        cases[name] = wanting_certificates(version), client, begin, end
    for name, (server_side, client, begin, end) in cases.items():
        with row(name), ThreadServer(RefusingTls(server_side)) as server:
            origin = f'https://127.0.0.1:{server.port}'
            async with pool(get_ssl_context=functools.partial(lambda same: same, client)) \
                    as request:
                error = await failed(
                    request(b'GET', origin),
                    HttpTlsError if begin is FAILED else HttpDataError, ssl.SSLError)
                assert str(error).startswith(
                    f'GET {origin} (peer 127.0.0.1:{server.port}){begin}')
                assert str(error).endswith(f'){end}')
                assert (error.reused, error.response_started) == (False, False)


def alert(number):
    """RFC 8446 6, 5.1."""
    return b'\x15\x03\x03\0\2\2%c' % number


# RFC 5246 7.4.1.3, but with the version of TLS 1.0.
OLD_SERVER_HELLO = b'\x16\3\1\0\x2a\2\0\0\x26\3\1' + bytes(32) + b'\0\0\x2f\0'

SAID_IN_HANDSHAKE = {
    'handshake_failure': (alert(40), REFUSED_HANDSHAKE),
    'bad_certificate': (
        alert(42), ' (the peer got no client certificate, or does not accept it)'),
    'unknown_ca': (alert(48), UNKNOWN_CERTIFICATE),
    'protocol_version': (alert(70), OTHER_VERSION),
    'unrecognized_name': (alert(112), ''),
    'certificate_required': (alert(116), ' (the peer wants a client certificate)'),
    'an old version': (
        OLD_SERVER_HELLO, ' (the SSL context does not allow the TLS version of the peer)'),
}


@on_loops
async def test_what_a_server_says_in_the_handshake_is_told_with_a_hint():
    async def script(said, peer):
        await peer.reader.read(65536)
        await peer.send(said)
        await peer.closed()

    for name, (said, hint) in SAID_IN_HANDSHAKE.items():
        async with (Server(functools.partial(script, said)) as server,
                    pool(get_ssl_context=trusting) as request):
            with row(name):
                error = await failed(
                    request(b'GET', f'https://127.0.0.1:{server.port}'), HttpTlsError,
                    ssl.SSLError)
                assert re.sub(r' \(_ssl\.c:\d+\)', '|', str(error)).partition('|')[2] == hint


@on_loops_at_once
async def test_a_handshake_that_hangs_uses_no_cpu_and_holds_no_place_for_long():
    """However many of them there are: each has its time, and then its place is free."""
    async def silent(peer):
        await peer.closed()

    cpu, started = time.thread_time(), time.monotonic()
    options = {'get_ssl_context': trusting, 'socket_timeout': 0.3, 'max_connections': 10,
               'get_sock': Socks(10)}
    async with Server(silent) as server, pool(**options) as request:
        url = f'https://127.0.0.1:{server.port}'
        await asyncio.gather(*[
            failed(request(b'GET', url), HttpTlsError, TimeoutError,
                   f'GET {url} (peer 127.0.0.1:{server.port}): the TLS handshake failed: '
                   'TimeoutError: socket_timeout, 0.3 seconds, passed')
            for _ in range(20)])
        assert len(server.peers) == 20
    assert time.thread_time() - cpu < (time.monotonic() - started) / 2
