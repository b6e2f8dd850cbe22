"""Tests of lowhaio_proxy: what scripted proxies receive, and what comes of their answers."""

import asyncio
import contextlib
import functools
import gc
import hashlib
import os
import pathlib
import re
import socket
import ssl
import threading
from base64 import b64encode
from ipaddress import ip_address

import pytest

import lowhaio_proxy
from lowhaio import (
    BodyEnded,
    ConnectionClosed,
    ConnectionTaken,
    HttpConnectionError,
    HttpDataError,
    HttpDnsError,
    HttpError,
    Pool,
    RequestStarted,
    buffered,
    streamed,
)
from lowhaio_proxy import Proxy, ProxyError, from_environment, proxied_pool
from lowhaio_retry import is_lasting, retry
from tests.harness import (
    OK,
    REFUSED,
    Answering,
    Server,
    ThreadServer,
    certified,
    context_for,
    context_of,
    failed,
    get,
    of_length,
    on_clock,
    on_loops,
    on_one_loop,
    passing,
    python_blocks,
    receive_head,
    resolving,
    response,
    row,
    run_block,
    trusting,
    turns,
    until,
    unwanted,
    value,
    yielding,
)


# ------------------------------------------------------------------------------------- proxies

async def copy(source, peer_writer):
    # On uvloop, it is a RuntimeError to write to what has been closed.
    with contextlib.suppress(OSError, RuntimeError):
        while data := await source.read(65536):
            peer_writer.write(data)
            await peer_writer.drain()
    peer_writer.close()


class Tunnel:
    """A script of an HTTP proxy whose tunnels all lead to one port of this machine.

    Before that it gives the answers. Those that are 200 open the tunnel.
    """

    def __init__(self, port=0, *answers):
        self.port = port
        self.answers = list(answers) or [b'HTTP/1.1 200 Connection established\r\n\r\n']
        self.heads = []
        self.ends = 0

    async def __call__(self, peer):
        self.heads.append(await peer.read_head())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if callable(answer):
            answer = answer(self.heads[-1])
        pieces = (answer,) if isinstance(answer, bytes) else answer
        await peer.send(*pieces)
        if re.search(rb' 2\d\d', b''.join(pieces)):
            await self.pass_on(peer)
        else:
            await peer.closed()
        self.ends += 1

    async def pass_on(self, peer):
        reader, writer = await asyncio.open_connection('127.0.0.1', self.port)
        try:
            await asyncio.gather(copy(peer.reader, writer), copy(reader, peer.writer))
        finally:
            writer.close()


class Socks(Tunnel):
    """The same for SOCKS5."""

    def __init__(self, port=0, method=0, verdict=0, reply=0, bound=b'\1\0\0\0\0\0\0'):
        super().__init__(port)
        self.said = method, verdict, reply, bound
        self.asked = []

    async def __call__(self, peer):
        method, verdict, reply, bound = self.said
        _, count = await peer.read(2)
        self.asked.append(await peer.read(count))
        await peer.send(b'\5%c' % method)
        if method == 2:
            _, length = await peer.read(2)
            user = await peer.read(length)
            [length] = await peer.read(1)
            self.asked.append((user, await peer.read(length)))
            await peer.send(b'\1%c' % verdict)
        _, _, _, kind = await peer.read(4)
        length = {1: 4, 4: 16}.get(kind) or (await peer.read(1))[0]
        host = await peer.read(length)
        port = int.from_bytes(await peer.read(2))
        self.asked.append((host.decode() if kind == 3 else str(ip_address(host)), port))
        # In two pieces, so that it is not there at once.
        await peer.send(b'\5%c\0' % reply, bound)
        if not reply:
            await self.pass_on(peer)
        self.ends += 1


class Expecting(Answering):
    """It wants the content only of what it does not refuse, if the client waits for that."""

    async def __call__(self, peer):
        while True:
            head = await peer.read_head()
            self.heads.append(head)
            self.connections.append(peer.index)
            answer = self.responses.pop(0)
            is_good = b' 407 ' not in answer
            if value(head, b'expect') == b'100-continue' and is_good:
                await peer.send(b'HTTP/1.1 100 Continue\r\n\r\n')
            if value(head, b'expect') is None or is_good:
                self.bodies.append(await peer.read_body(head))
            await peer.send(answer)


@contextlib.asynccontextmanager
async def proxied(proxies, **options):
    """A proxied `request`, and afterwards its `close`."""
    request, close = proxied_pool(
        proxies, **{'get_ssl_context': trusting, 'get_proxy_ssl_context': trusting, **options})
    try:
        yield request
    finally:
        await close()
        # The relays see the ends of their connections.
        await turns(5)


CHALLENGE = b'proxy-authenticate: Digest realm="r", nonce="%b", qop="auth", algorithm=SHA-256'


def challenge(nonce=b'n1', stale=b'', fields=(), body=b'no'):
    return response(407, body, CHALLENGE % nonce + stale, *fields)


def digest_of(head, user, password):
    """Whether the field of a head proves the password, and the count of its nonce."""
    field = value(head, b'proxy-authorization').decode()
    given = dict(re.findall(r'(\w+)="?([^",]*)"?', field.partition(' ')[2]))
    method, target, _ = head.decode().split(' ', 2)
    assert (given['username'], given['uri']) == (user, target)

    def sha(text):
        return hashlib.sha256(text.encode()).hexdigest()

    proof = sha(':'.join((sha(f'{user}:{given["realm"]}:{password}'), given['nonce'], given['nc'],
                          given['cnonce'], 'auth', sha(f'{method}:{target}'))))
    return given['response'] == proof, given['nonce'], int(given['nc'], 16)


# ----------------------------------------------------------------------------------- forwarded

# URL, params and target, and what the proxy gets: the target and the host.
MUNICH = b'xn--mnchen-3ya.example'
FORWARDED = [
    ('http://a.example', (), None, b'http://a.example/', b'a.example'),
    ('http://A.Example:80/x?y#z', (), None, b'http://a.example/x?y', b'a.example'),
    ('http://a.example.:8080?q', (), None, b'http://a.example:8080/?q', b'a.example:8080'),
    ('http://[FE80::1%25lo]/', (), None, b'http://[fe80::1]/', b'[fe80::1]'),
    ('http://[::1]:81/', (), None, b'http://[::1]:81/', b'[::1]:81'),
    ('http://M\u00fcnchen.example/', (), None, b'http://%b/' % MUNICH, MUNICH),
    ('http://a.example/x', (('a', 'b c'),), None, b'http://a.example/x?a=b+c', b'a.example'),
    ('http://a.example/x?y', (('a', 'b'),), None, b'http://a.example/x?y&a=b', b'a.example'),
    ('http://a.example/x?', {'a': [1, 2]}, None, b'http://a.example/x?a=1&a=2', b'a.example'),
    ('http://a.example/x', (), b'/%7ey', b'http://a.example/%7ey', b'a.example'),
    ('http://a.example/x', (), b'*', b'http://a.example', b'a.example'),
    ('http://a.example/x', (), b'http://b.example/', b'http://b.example/', b'a.example'),
]


@on_one_loop
async def test_a_request_for_http_goes_to_the_proxy_with_the_whole_url():
    script = Answering(OK)
    async with Server(script) as server, proxied(server.origin) as request:
        for url, params, given, target, host in FORWARDED:
            with row(url):
                await get(request, url, params=params, target=given, server_hostname='x.example')
                assert script.heads[-1] == b'GET %b HTTP/1.1\r\nhost: %b\r\n\r\n' % (target, host)
    # All over one connection, whatever the origin.
    assert set(script.connections) == {0}


@on_one_loop
async def test_a_target_is_encoded_as_lowhaio_does_it():
    path = ''.join(map(chr, range(0x21, 0x7f))).replace('#', '') + '%41%4\u00e9\U0001f600?^'
    direct, forwarded = Answering(OK), Answering(OK)
    async with Server(direct) as server, Server(forwarded) as proxy:
        async with proxied(lambda *origin: None) as request:
            await get(request, f'{server.origin}/{path}')
        async with proxied(proxy.origin) as request:
            await get(request, f'{server.origin}/{path}')
    assert forwarded.lines == [direct.lines[0].replace('GET ', f'GET {server.origin}')]


@on_one_loop
async def test_fields_and_the_body_are_passed_as_they_are_and_the_proxys_own_are_added():
    script = Expecting(response(201, b'', b'x-a: 1'))
    proxy_fields = ((b'X-Proxy', b'1'),)
    async with Server(script) as server:
        async with proxied(Proxy(server.origin, auth=('user', 'p:\u00e9'), headers=proxy_fields)
                           ) as request:
            code, headers, body = await request(
                b'PUT', 'http://a.example/', headers=iter((
                    (b'Host', b'b.example'), (b'Content-Length', b'3'), (b'x', b'1'),
                    (b'x', b'2'))),
                body=lambda *args, **kwargs: yielding(*args, kwargs['last']),
                body_args=iter((b'a', b'b')), body_kwargs=iter((('last', b'c'),)))
            assert (code, dict(headers)[b'x-a'], body.reason) == (b'201', b'1', b'Reason')
            assert repr(body).startswith('<ForwardedBody of <ReceivedBody')
            assert await buffered(body) == b''
            await body.aclose()
    secret = b64encode('user:p:\u00e9'.encode())
    assert script.heads == [
        b'PUT http://a.example/ HTTP/1.1\r\nHost: b.example\r\nContent-Length: 3\r\nx: 1\r\n'
        b'x: 2\r\n'
        b'X-Proxy: 1\r\nproxy-authorization: Basic ' + secret + b'\r\n'
        b'expect: 100-continue\r\n\r\n']
    assert script.bodies == [b'abc']


@on_one_loop
async def test_errors_of_a_forwarded_request_tell_the_origin_and_the_proxy():
    cut_off = b'HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc'
    async with Server(Answering(None, cut_off, close_after=True)) as server:
        async with proxied(server.origin) as request:
            where = (f'GET http://a.example:80 through {server.origin} '
                     f'(peer 127.0.0.1:{server.port}), ')
            with pytest.raises(HttpDataError) as caught:
                await request(b'GET', 'http://a.example/?secret')
            assert str(caught.value).startswith(f'{where}reading the response head: ')
            _, _, body = await request(b'GET', 'http://a.example/')
            # Whoever reads on gets the same error.
            for _ in range(2):
                with pytest.raises(HttpDataError) as caught:
                    await buffered(body)
                assert str(caught.value).startswith(f'{where}reading the response body: ')
            await failed(
                request(b'GET', 'http://a.example/', headers=((b'a b', b''),)),
                HttpConnectionError, ValueError,
                f'GET http://a.example:80 through {server.origin}, refused: headers '
                "must have tokens as names, got b'a b'")


NOT_FORWARDED = {
    'headers': ({'headers': (1,)}, None),
    'no headers': ({'headers': 1}, None),
    'params': ({'params': ((b'a', b'b'),)},
               'params must be pairs of str, got pairs of bytes: were they headers?'),
    'target': ({'target': '/'}, 'target must be bytes, got str'),
    'credentials': ({'headers': ((b'Proxy-Authorization', b'Basic secret'),)},
                    'headers must not have proxy-authorization: the Proxy has the credentials'),
}


@pytest.mark.parametrize('name', NOT_FORWARDED)
@on_one_loop
async def test_a_request_that_is_refused_by_the_layer(name):
    options, why = NOT_FORWARDED[name]
    async with proxied('http://127.0.0.1:1') as request:
        with pytest.raises(HttpConnectionError) as caught:
            await request(b'GET', 'http://a.example/?secret', **options)
        if why is None:
            why = 'headers must be pairs of name and value, both bytes, got int'
            assert str(caught.value).endswith(f'http://127.0.0.1:1, refused: {why}')
        else:
            assert str(caught.value) == f'GET http://a.example:80, refused: {why}'
        assert (caught.value.phase, is_lasting(caught.value)) == ('refused', True)


@pytest.mark.parametrize('url', [
    1, 'ftp://a.example/', 'http://u:p@a.example/', 'http://a.example:0/', 'http://a b/',
    'http://a.example:99999/', 'http:///', 'http://a.example:x/', 'https://[::1/'])
@on_one_loop
async def test_a_url_that_lowhaio_refuses_is_refused_in_the_same_words(url):
    request, close = Pool()
    with pytest.raises(HttpConnectionError) as expected:
        await request(b'GET', url)
    async with proxied(unwanted) as request:
        with pytest.raises(HttpConnectionError) as caught:
            await request(b'GET', url)
    assert str(caught.value) == str(expected.value)


@on_one_loop
async def test_headers_and_params_may_be_none_as_for_lowhaio():
    script = Answering(OK)
    async with Server(script) as server, proxied(server.origin) as request:
        await get(request, 'http://a.example/', params=None, headers=None)
    assert script.heads == [b'GET http://a.example/ HTTP/1.1\r\nhost: a.example\r\n\r\n']


@on_one_loop
async def test_params_beside_a_target_are_refused_by_the_pool():
    async with proxied('http://127.0.0.1:1') as request:
        error = await failed(request(b'GET', 'http://a.example/', {'a': 'b'}, target=b'/'),
                             HttpConnectionError, ValueError)
        assert 'params must be empty when there is a target' in str(error)


@on_loops
async def test_without_a_proxy_a_request_is_direct_and_may_have_any_fields():
    script = Answering(OK)
    async with Server(script) as server, proxied(None) as request:
        await get(request, server.url, headers=((b'proxy-authorization', b'x'),))
        await get(request, server.url)
    assert script.lines == ['GET /'] * 2
    assert script.connections == [0, 0]


# ----------------------------------------------------------------------------------------- 407

@on_one_loop
async def test_credentials_of_the_url_are_decoded_and_sent_to_the_proxy_only():
    script = Answering(OK)
    async with Server(script, context_of('https')) as server:
        tunnel = Tunnel(server.port)
        async with Server(tunnel) as proxy:
            url = f'http://%C3%A9%40x:%3A%2Fp%25@127.0.0.1:{proxy.port}/'
            async with proxied(url) as request:
                await get(request, 'https://name.test/')
    secret = b'Basic ' + b64encode('\u00e9@x::/p%'.encode())
    assert tunnel.heads == [b'CONNECT name.test:443 HTTP/1.1\r\nhost: name.test:443\r\n'
                            b'proxy-authorization: %b\r\n\r\n' % secret]
    assert script.heads == [b'GET / HTTP/1.1\r\nhost: name.test\r\n\r\n']


@on_loops
async def test_a_digest_is_answered_and_remembered_for_forwarded_requests():
    def body():
        return yielding(b'abc')

    answers = [challenge(), OK, OK, challenge(b'n2', b', stale=TRUE'), OK]
    script = Expecting(*answers)
    async with Server(script) as server:
        url = f'http://user:secret@127.0.0.1:{server.port}'
        async with proxied(url) as request:
            for _ in range(3):
                code, _, response_body = await request(
                    b'PUT', 'http://a.example/x', headers=of_length(3), body=body)
                assert (code, await buffered(response_body)) == (b'200', b'ok')
    # No content was sent with what was refused.
    assert script.bodies == [b'abc'] * 3
    assert script.connections == [0, 1, 1, 1, 2]
    assert value(script.heads[0], b'proxy-authorization').startswith(b'Basic ')
    assert [digest_of(head, 'user', 'secret') for head in script.heads[1:]] == [
        (True, 'n1', 1), (True, 'n1', 2), (True, 'n1', 3), (True, 'n2', 1)]


@on_one_loop
async def test_connections_are_kept_once_the_password_is_known_to_be_good():
    script = Expecting(OK, OK, OK, challenge(), OK, OK, OK)
    chunked = (b'Transfer-Encoding', b'chunked')
    expect = (b'Expect', b'100-continue')
    async with Server(script) as server:
        async with proxied(f'http://u:p@127.0.0.1:{server.port}') as request:
            for fields, data in [
                    ((chunked,), b'1\r\na\r\n0\r\n\r\n'), (of_length(1), b'a'), ((), b''),
                    (of_length(0), b''), ((*of_length(1), expect), b'a'), (of_length(1), b'a')]:
                code, _, body = await request(b'POST', 'http://a.example/', headers=fields,
                                              body=streamed(data))
                assert (code, await buffered(body)) == (b'200', b'ok')
    assert [value(head, b'expect') for head in script.heads] == [
        b'100-continue', None, None, None, None, b'100-continue', b'100-continue']
    assert set(script.connections) == {0}


@on_loops
async def test_a_digest_is_answered_and_remembered_for_tunnels():
    async with Server(Answering(OK), context_of('https')) as server:
        # The body of the 407 is as long as it says, and the connection stays open.
        tunnel = Tunnel(server.port, challenge(), b'HTTP/1.0 200 OK\r\n\r\n')
        async with Server(tunnel) as proxy:
            async with proxied(f'http://user:secret@127.0.0.1:{proxy.port}') as request:
                for host in ('name.test', '127.0.0.1', 'name.test'):
                    await get(request, f'https://{host}/')
            await until(lambda: tunnel.ends == 3)
    assert [head.partition(b' HTTP')[0] for head in tunnel.heads] == [
        b'CONNECT name.test:443'] * 2 + [b'CONNECT 127.0.0.1:443']
    assert [digest_of(head, 'user', 'secret') for head in tunnel.heads[1:]] == [
        (True, 'n1', 1), (True, 'n1', 2)]


STALE = b', stale=true'
REFUSALS = {
    'without credentials': ('', [challenge()], 1),
    'basic is refused': ('user:wrong@', [response(407, b'no', b'proxy-authenticate: Basic')], 1),
    'the digest is refused': ('user:wrong@', [challenge(), challenge(b'n2')], 2),
    'always stale': ('user:wrong@', [challenge(b'n', STALE)], 6),
    'an unknown hash': ('user:p@', [response(
        407, b'no', b'proxy-authenticate: Digest realm=a, nonce=b, algorithm=X')], 1),
    'a hash of the content': ('user:p@', [response(
        407, b'no', b'proxy-authenticate: Digest realm=a, nonce=b, qop=auth-int')], 1),
}


@pytest.mark.parametrize('name', REFUSALS)
@pytest.mark.parametrize('scheme', ['http', 'https'])
@on_one_loop
async def test_a_407_that_stays_is_an_error_that_lasts(scheme, name):
    user, answers, count = REFUSALS[name]
    script = Answering(*answers) if scheme == 'http' else Tunnel(0, *answers)
    async with Server(script) as server:
        async with proxied(f'http://{user}127.0.0.1:{server.port}') as request:
            with pytest.raises(HttpError) as caught:
                await retry(request, ((HttpError, (0,)),))(b'GET', f'{scheme}://a.example/')
    error, cause = caught.value, caught.value.__cause__
    assert len(script.heads) == count
    if scheme == 'http':
        assert type(error) is HttpDataError
        assert error.response_started
        said = f'GET http://a.example:80: the proxy {server.origin}, asked for http://a.example:80,'
    else:
        assert type(error) is HttpConnectionError
        said = ('GET https://a.example:443: get_connection failed: ProxyError: the proxy '
                f'{server.origin}, asked to connect to a.example:443,')
    assert str(error) == f"{said} answered 407 Reason: 'no'"
    assert 'wrong' not in repr(error)
    assert isinstance(cause, ProxyError)
    assert is_lasting(error)
    assert cause.code == b'407'
    assert b'content-length' in dict(cause.headers)


@pytest.mark.parametrize('scheme', ['http', 'https'])
@on_one_loop
async def test_a_challenge_that_the_proxy_has_forgotten_is_no_wrong_password(scheme):
    async with Server(Answering(OK), context_of('https')) as server:
        answers = [challenge(), OK, challenge(b'n2'), OK]
        script = Answering(*answers) if scheme == 'http' else Tunnel(server.port, *(
            b'HTTP/1.1 200 OK\r\n\r\n' if answer is OK else answer for answer in answers))
        async with Server(script) as proxy:
            async with proxied(f'http://u:p@127.0.0.1:{proxy.port}', keep_alive_timeout=0
                               ) as request:
                for _ in range(2):
                    assert (await get(request, f'{scheme}://name.test/'))[2] == b'ok'
    assert [digest_of(head, 'u', 'p') for head in script.heads[1:]] == [
        (True, 'n1', 1), (True, 'n1', 2), (True, 'n2', 1)]


@on_one_loop
async def test_after_a_407_a_failure_to_connect_may_not_be_taken_for_nothing_sent():
    def closing(head, body):
        server.server.close()
        return challenge(fields=(b'connection: close',))

    script = Answering(closing, close_after=True)
    async with Server(script) as server:
        async with proxied(f'http://u:p@127.0.0.1:{server.port}') as request:
            error = await failed(request(b'GET', 'http://a.example/'), HttpDataError,
                                 HttpConnectionError)
    assert str(error) == (
        f'after a first answer, 407: GET http://a.example:80 through {server.origin}: connecting '
        f'failed: 127.0.0.1: {REFUSED}')
    assert (error.response_started, error.phase) == (True, 'connect')


@on_one_loop
async def test_without_a_407_a_failure_to_connect_is_one():
    with socket.create_server(('127.0.0.1', 0)) as listening:
        port = listening.getsockname()[1]
    async with proxied(f'http://127.0.0.1:{port}') as request:
        await failed(request(b'GET', 'http://a.example/'), HttpConnectionError,
                     ConnectionRefusedError, 'GET http://a.example:80 through '
                     f'http://127.0.0.1:{port}: connecting failed: 127.0.0.1: {REFUSED}')
        error = await failed(
            request(b'GET', 'https://a.example/'), HttpConnectionError, ProxyError)
        assert str(error) == (
            'GET https://a.example:443: get_connection failed: ProxyError: the proxy '
            f'http://127.0.0.1:{port} was not reached: CONNECT tcp://127.0.0.1:{port}: connecting '
            f'failed: 127.0.0.1: {REFUSED}')


@on_clock
async def test_a_page_that_does_not_end_is_not_waited_for():
    endless = b'HTTP/1.1 407 No\r\ncontent-length: 100\r\n\r\nwhy\r\n'
    for scheme, answer, said in [
            ('http', endless, ": 'why'"), ('https', endless, ": 'why'"),
            ('http', endless[:-5], ''), ('https', endless[:-5], ''),
            # What is drained, after a challenge, has a limit too.
            ('http', b'HTTP/1.1 407 No\r\n' + CHALLENGE % b'n' + b'\r\n\r\n', '')]:
        async def script(peer, answer=answer):
            await peer.read_head()
            await peer.send(answer)
            await peer.closed()

        async with Server(script) as server:
            async with proxied(f'http://u:p@127.0.0.1:{server.port}') as request:
                task = asyncio.ensure_future(request(b'GET', f'{scheme}://a.example/'))
                await passing(1)
                await passing(1)
                with pytest.raises(HttpError) as caught:
                    await task
                assert str(caught.value).endswith(f'answered 407 No{said}')


@on_one_loop
async def test_a_long_body_of_a_407_is_not_read_whole():
    page = b'-' * 2_000_000
    script = Answering(challenge(body=page), challenge(b'n2', body=page))
    async with Server(script) as server:
        async with proxied(f'http://u:p@127.0.0.1:{server.port}') as request:
            with pytest.raises(HttpDataError) as caught:
                await request(b'GET', 'http://a.example/')
    assert str(caught.value).endswith(f"answered 407 Reason: '{'-' * 120}'")
    assert script.connections == [0, 1]


# ------------------------------------------------------------------------------------- CONNECT

GOOD_HEADS = [
    b'HTTP/1.1 200 Connection established\r\n\r\n',
    b'HTTP/1.0 200 \n\n',
    b'HTTP/1.1 299\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\nx:\r\n\r\n',
    b'HTTP/1.1 103 Early\r\nlink: a\r\n\r\nHTTP/1.1 200 OK\r\n\r\n',
]


@pytest.mark.parametrize('head', GOOD_HEADS)
@on_one_loop
async def test_an_answer_is_read_however_it_is_cut(head):
    async with Server(Answering(OK), context_of('https')) as server:
        cuts = [[head], [head[index:index + 1] for index in range(len(head))],
                *([head[:index], head[index:]] for index in range(len(head) - 5, len(head)))]
        tunnel = Tunnel(server.port, *cuts)
        async with Server(tunnel) as proxy:
            async with proxied(proxy.origin, keep_alive_timeout=0) as request:
                for _ in cuts:
                    assert (await get(request, 'https://name.test/'))[2] == b'ok'


BAD_ANSWERS = {
    b'': 'it closed the connection after b\'\'',
    b'HTTP/1.1 200 OK\r\nx:1\r\n':
    "it closed the connection after b'HTTP/1.1 200 OK\\r\\nx:1\\r\\n'",
    b'HTTP/2 200\r\n\r\n': "it answered with no status line of HTTP/1: b'HTTP/2 200'",
    b'HTTP/1.1 099 No\r\n\r\n': "it answered with no status line of HTTP/1: b'HTTP/1.1 099 No'",
    b'HTTP/1.1 200 O\rK\r\n\r\n':
    "it answered with no status line of HTTP/1: b'HTTP/1.1 200 O\\rK'",
    b'SSH-2.0\r\n\r\n': "it answered with no status line of HTTP/1: b'SSH-2.0'",
    b'HTTP/1.1 200 OK\r\nx y: 1\r\n\r\n': "it answered with a bad field: b'x y: 1'",
    b'HTTP/1.1 200 OK\r\nx: 1\r\n y\r\n\r\n': "it answered with a bad field: b' y'",
    b'HTTP/1.1 200 OK\r\nx: \0\r\n\r\n': "it answered with a bad field: b'x: \\x00'",
    b'HTTP/1.1 100 Go\r\n\r\n' * 11: 'it sent more than 10 interim responses',
    b'HTTP/1.1 200 OK\r\n\r\nmore': "after its answer it sent b'more', before the server could",
    b'HTTP/1.1 200 OK\r\nx: ' + b'y' * 20_000: 'its answer has a head of more than 16384 bytes: '
    "b'HTTP/1.1 200 OK\\r\\nx: " + 'y' * 40 + "'...",
}


@pytest.mark.parametrize('answer', BAD_ANSWERS, ids=lambda answer: answer[:20])
@on_one_loop
async def test_a_bad_answer_is_refused(answer):
    async def script(peer):
        await peer.read_head()
        peer.writer.write(answer)
        if b'OK\r\n\r\n' not in answer and len(answer) < 20_000:
            peer.writer.write_eof()
        closed.append(await peer.closed())

    closed = []
    async with Server(script) as server, proxied(server.origin) as request:
        error = await failed(request(b'GET', 'https://a.example/?secret'), HttpConnectionError,
                             ProxyError)
        assert str(error) == (
            'GET https://a.example:443: get_connection failed: ProxyError: the proxy '
            f'{server.origin}, asked to connect to a.example:443: {BAD_ANSWERS[answer]}')
        assert (error.__cause__.code, is_lasting(error)) == (b'', False)
        await until(lambda: closed)


@on_one_loop
async def test_a_proxy_that_ends_after_its_answer_or_resets_is_one_that_fails():
    async def ending(peer):
        await peer.read_head()
        peer.writer.write(GOOD_HEADS[0])
        peer.writer.write_eof()
        await peer.closed()

    async def resetting(peer):
        await peer.read_head()
        peer.reset()

    for script, why in ((ending, 'it closed the connection after its answer'),
                        (resetting, '[Errno 104] Connection reset by peer')):
        async with Server(script) as server, proxied(server.origin) as request:
            error = await failed(request(b'GET', 'https://[fe80::1%25lo]/'), HttpConnectionError,
                                 ProxyError)
            assert str(error).endswith(f'asked to connect to [fe80::1]:443: {why}')


PAGES = {
    response(503, b'<html><head><TITLE lang=en> Not \r\n here </title>'):
    ("503 Reason: 'Not here'", b'503', False),
    response(403, b'\r\nfirst\nsecond'): ("403 Reason: 'first'", b'403', True),
    b'HTTP/1.1 502 Bad \xe9\r\ntransfer-encoding: chunked\r\n\r\n5\r\nno\xff!\n\r\n0\r\n\r\n':
    ("502 Bad \xe9: 'no\ufffd!'", b'502', False),
    response(401, b''): ('401 Reason', b'401', True),
    b'HTTP/1.1 502 \x1b[1m\t\x9bBad\r\ncontent-length: 0\r\n\r\n':
    ('502 \ufffd[1m\ufffd\ufffdBad', b'502', False),
    response(302, b'x' * 1000): (f"302 Reason: '{'x' * 120}'", b'302', False),
}


@pytest.mark.parametrize('answer', PAGES, ids=lambda answer: answer[:12])
@on_one_loop
async def test_a_refusal_shows_what_the_proxy_says(answer):
    said, code, lasts = PAGES[answer]
    tunnel = Tunnel(0, answer)
    async with Server(tunnel) as server:
        async with proxied(f'http://user:secret@127.0.0.1:{server.port}') as request:
            error = await failed(request(b'GET', 'https://a.example/'), HttpConnectionError,
                                 ProxyError)
            await until(lambda: tunnel.ends)
    cause = error.__cause__
    assert str(error) == (
        'GET https://a.example:443: get_connection failed: ProxyError: the proxy '
        f'{server.origin}, asked to connect to a.example:443, answered {said}')
    assert (cause.code, is_lasting(error)) == (code, lasts)
    assert 'secret' not in f'{error!r}{cause!r}{vars(cause)}'


@on_clock
async def test_the_time_to_connect_covers_the_proxy():
    async def script(peer):
        await peer.read_head()
        await peer.send(b'HTTP/1.1 200')
        closed.append(await peer.closed())

    closed = []
    for proxy_scheme in ('http', 'socks5'):
        async with Server(script) as server:
            async with proxied(f'{proxy_scheme}://127.0.0.1:{server.port}', socket_timeout=10
                               ) as request:
                task = asyncio.ensure_future(request(
                    b'GET', 'https://1.2.3.4/', timeouts={'connect': 3}))
                await passing(2.9)
                assert not task.done()
                await passing(0.2)
                error = await failed(task, HttpConnectionError, TimeoutError)
                assert str(error).endswith("TimeoutError: timeouts['connect'], 3 seconds, passed")
    assert closed == [b'']


@on_loops
async def test_an_upgrade_of_http_goes_through_a_tunnel():
    async def script(peer):
        await peer.read_head()
        await peer.send(b'HTTP/1.1 101 Switching\r\nupgrade: echo\r\n\r\n')
        await peer.send(await peer.read(3))

    async with Server(script) as server:
        tunnel = Tunnel(server.port)
        async with Server(tunnel) as proxy, proxied(proxy.origin) as request:
            _, _, body = await request(b'GET', 'http://a.example/', headers=(
                (b'Upgrade', b'echo'), (b'connection', b'upgrade')))
            await body.send(b'abc')
            assert await buffered(body) == b'abc'
    assert tunnel.heads[0].startswith(b'CONNECT a.example:80 HTTP/1.1\r\n')


@on_loops
async def test_a_request_that_is_cancelled_leaves_nothing_open():
    """At each point where it may wait. The harness looks for what is left."""
    upgrade = ((b'upgrade', b'x'),)
    async with Server(Answering(OK)) as server:
        for scheme, script, context in [
                ('http', Tunnel(server.port), None), ('socks5h', Socks(server.port), None),
                ('https', Tunnel(server.port), context_of('https'))]:
            async with Server(script, context) as proxy:
                for steps in range(1, 200):
                    async with proxied(f'{scheme}://127.0.0.1:{proxy.port}') as request:
                        task = asyncio.ensure_future(
                            get(request, 'http://a.example/', headers=upgrade))
                        await turns(steps)
                        if task.done():
                            break
                        task.cancel('why')
                        with pytest.raises(asyncio.CancelledError):
                            await task
                assert 5 < steps < 199


# ---------------------------------------------------------------------------------------- SOCKS5

SOCKS_ADDRESSES = {
    ('socks5h', 'http://name.test/'): ('name.test', 80),
    ('socks5h', 'https://127.0.0.1:81/'): ('127.0.0.1', 81),
    ('socks5h', 'http://[2001:DB8::1]/'): ('2001:db8::1', 80),
    ('socks5', 'http://[fe80::1%25lo]/'): ('fe80::1', 80),
    ('socks5', 'https://name.test/'): ('192.0.2.1', 443),
    ('SOCKS5', 'http://ipv6.test/'): ('2001:db8::2', 80),
}
BOUND = (b'\1' + bytes(6), b'\3\4name\0\0', b'\4' + bytes(18))


async def resolve(host):
    assert host == 'name.test' or host == 'ipv6.test'
    return [ip_address('192.0.2.1')] if host == 'name.test' else []


async def resolve_ipv6(host):
    return [ip_address('2001:db8::2')]


@on_loops
async def test_a_socks_proxy_is_asked_for_names_or_addresses():
    for index, ((scheme, url), asked) in enumerate(SOCKS_ADDRESSES.items()):
        context = context_of(url.partition(':')[0])
        async with Server(Answering(OK), context) as server:
            script = Socks(server.port, bound=BOUND[index % 3])
            async with Server(script) as proxy:
                async with proxied(f'{scheme}://127.0.0.1:{proxy.port}', get_dns_resolver=(
                        unwanted if scheme == 'socks5h' else resolving(resolve, resolve_ipv6))
                        ) as request:
                    for _ in range(2):
                        assert (await get(request, url))[2] == b'ok'
                await until(lambda: script.ends)  # noqa: B023
        assert script.asked == [b'\0', asked]


@on_one_loop
async def test_a_socks_proxy_gets_the_user_and_the_password_if_it_wants_them():
    async with Server(Answering(OK)) as server:
        for method, sent in ((0, []), (2, [('\u00e9'.encode(), b':p')])):
            script = Socks(server.port, method=method)
            async with Server(script) as proxy:
                async with proxied(f'socks5h://%C3%A9::p@127.0.0.1:{proxy.port}') as request:
                    assert (await get(request, 'http://name.test/'))[2] == b'ok'
            assert script.asked == [b'\0\2', *sent, ('name.test', 80)]


ASKED = ', asked to connect to a.example:80, answered '
SOCKS_REFUSALS = {
    'general': (Socks(reply=1), f'{ASKED}1: a general failure', False),
    'rules': (Socks(reply=2), f'{ASKED}2: its rules do not allow that', True),
    'network': (Socks(reply=3), f'{ASKED}3: the network can not be reached', False),
    'host': (Socks(reply=4), f'{ASKED}4: the host can not be reached', False),
    'port': (Socks(reply=5), f'{ASKED}5: the connection was refused', False),
    'ttl': (Socks(reply=6), f'{ASKED}6: the time to live has expired', False),
    'command': (Socks(reply=7), f'{ASKED}7: it does not know the command', True),
    'address': (Socks(reply=8), f'{ASKED}8: it does not know this type of address', True),
    'unknown': (Socks(reply=99), f'{ASKED}99: an unknown code', False),
    'verdict': (Socks(method=2, verdict=1), ' does not accept the user and the password', True),
    'method': (Socks(method=255), ' wants another authentication than a user and a password',
               True),
}


@pytest.mark.parametrize('name', SOCKS_REFUSALS)
@on_one_loop
async def test_a_socks_proxy_that_refuses(name):
    script, why, lasts = SOCKS_REFUSALS[name]
    async with Server(script) as server:
        proxy = Proxy(f'socks5h://127.0.0.1:{server.port}', auth=('user', 'secret'))
        async with proxied(proxy) as request:
            error = await failed(request(b'GET', 'http://a.example/'), HttpConnectionError,
                                 ProxyError)
    assert str(error) == ('GET http://a.example:80: get_connection failed: ProxyError: the proxy '
                          f'socks5h://127.0.0.1:{server.port}{why}')
    assert is_lasting(error) == lasts


@pytest.mark.parametrize('method', [2, 255])
@on_one_loop
async def test_a_socks_proxy_that_wants_credentials(method):
    async with Server(Socks(method=method)) as server:
        async with proxied(f'socks5h://127.0.0.1:{server.port}') as request:
            error = await failed(request(b'GET', 'http://a.example/'), HttpConnectionError,
                                 ProxyError)
    assert str(error).endswith(' wants a user and a password, or another authentication')
    assert is_lasting(error)


SOCKS_ANSWERS = b'\5\0', b'\5\0\0\1' + bytes(6)


@on_one_loop
async def test_a_socks_proxy_that_hangs_up_at_any_byte_or_says_something_else():
    whole = b''.join(SOCKS_ANSWERS)
    rows = {whole[:length]: ': it closed the connection after ' for length in range(len(whole))}
    rows |= {
        b'HT': " does not speak SOCKS5: it answered b'HT'",
        b'\5\0\4\0\0\1': ' answered version 4 in place of 5',
        whole + b'x': ": after its answer it sent b'x', before the server could",
        whole: ': it closed the connection after its answer',
    }
    for answer, why in rows.items():
        async def script(peer, answer=answer):
            await peer.read(3)
            peer.writer.write(answer)
            peer.writer.write_eof()
            await peer.closed()

        with row(answer):
            async with Server(script) as server:
                async with proxied(f'socks5h://127.0.0.1:{server.port}') as request:
                    error = await failed(request(b'GET', 'http://a.example/'), HttpConnectionError,
                                         ProxyError)
            assert why in str(error)
            assert not is_lasting(error)


@on_one_loop
async def test_a_name_that_socks5_does_not_find_here_is_told_as_such():
    async def nothing(host):
        return []

    async with proxied('socks5://127.0.0.1:1', get_dns_resolver=resolving(nothing, nothing)
                       ) as request:
        error = await failed(request(b'GET', 'http://nx.test/'), HttpConnectionError, HttpDnsError)
    assert str(error).startswith('GET http://nx.test:80: get_connection failed: HttpDnsError: '
                                 'CONNECT nx.test: resolving nx.test failed: ')


@on_loops
async def test_the_name_of_a_proxy_is_looked_up_by_the_resolver_of_the_options():
    async def local(host):
        hosts.append(host)
        return [ip_address('127.0.0.1')]

    hosts = []
    async with Server(Answering(OK), context_of('https')) as server:
        tunnel = Tunnel(server.port)
        async with Server(tunnel) as proxy:
            async with proxied(f'proxy.test:{proxy.port}', get_dns_resolver=resolving(local),
                               min_ttl=0) as request:
                await get(request, 'https://name.test/')
    assert set(hosts) == {'proxy.test'}
    assert len(tunnel.heads) == 1


# ------------------------------------------------------------------------- proxies reached by TLS

@pytest.fixture
def relays(monkeypatch):
    """Those that are made in a test."""
    class Noted(lowhaio_proxy.Relay):
        __slots__ = ()

        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    made = []
    monkeypatch.setattr(lowhaio_proxy, 'Relay', Noted)
    return made


def get_small_sock(family):
    """So that what is sent and not taken soon fills all buffers on the way."""
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    sock.setblocking(False)
    return sock


@on_loops
async def test_a_proxy_by_tls_gets_a_forwarded_request():
    script = Answering(OK)
    async with Server(script, context_of('https')) as proxy:
        async with proxied(f'https://127.0.0.1:{proxy.port}', get_ssl_context=unwanted) as request:
            _, _, body = await request(b'GET', 'http://a.example/', server_hostname='x.test')
            assert await buffered(body) == b'ok'
            assert body.connection.tls_version == 'TLSv1.3'
    assert script.heads == [b'GET http://a.example/ HTTP/1.1\r\nhost: a.example\r\n\r\n']


@pytest.mark.parametrize('version', [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@on_loops
async def test_a_tunnel_by_tls_carries_bytes_both_ways(version):
    """More than all buffers on the way hold."""
    sent, received = os.urandom(1_000_000), os.urandom(2_000_000)
    script = Answering(response(200, received), OK)
    async with Server(script, context_for('name.test')) as server:
        tunnel = Tunnel(server.port)
        async with Server(tunnel, certified('127.0.0.1', version=version)) as proxy:
            async with proxied(f'https://127.0.0.1:{proxy.port}') as request:
                code, _, body = await request(
                    b'PUT', 'https://name.test/', headers=of_length(len(sent)),
                    body=streamed(sent))
                assert await buffered(body) == received
                assert (await get(request, 'https://name.test/'))[2] == b'ok'
            await until(lambda: tunnel.ends)
    assert script.bodies == [sent, b'']
    assert script.connections == [0, 0]


@on_loops
async def test_a_tunnel_by_tls_holds_no_more_than_its_buffers(relays):
    async def script(peer):
        await peer.read_head()
        with contextlib.suppress(ConnectionError):
            await peer.send(b'HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n' % (50 * len(chunk)))
            while True:
                await peer.send(chunk)
                passed.append(1)

    chunk, passed = bytes(1_000_000), []
    async with Server(script, context_for('name.test')) as server:
        tunnel = Tunnel(server.port)
        async with Server(tunnel, context_of('https')) as proxy:
            async with proxied(f'https://127.0.0.1:{proxy.port}') as request:
                _, _, body = await request(b'GET', 'https://name.test/')
                before = -1
                while len(passed) > before:
                    before = len(passed)
                    for _ in range(20):
                        await asyncio.sleep(0.001)
                assert len(passed) < 40
                relay, = relays
                assert repr(relay) == f'<Relay {len(relay.inward)} bytes inward, 0 outward>'
                assert 0 < len(relay.inward) <= 64 * 1024
                await body.aclose()
                await until(lambda: tunnel.ends)
                assert repr(relay).startswith('<Relay closed, ')


@on_loops
async def test_a_tunnel_by_tls_ends_with_a_close_notify_when_the_pool_is_closed():
    def script(sock):
        receive_head(sock)
        sock.sendall(b'HTTP/1.1 200 OK\r\n\r\n')
        receive_head(sock)
        sock.sendall(OK)
        # Without a close_notify it would raise.
        ends.append(sock.recv(1))

    ends = []
    with ThreadServer(script, context_of('https')) as proxy:
        async with proxied(f'https://127.0.0.1:{proxy.port}') as request:
            await get(request, 'http://a.example/', headers=((b'upgrade', b'x'),))
            assert ends == []
        await until(lambda: ends)
    assert ends == [b'']


@pytest.mark.parametrize('end', ['cancelled', 'aborted'])
@on_clock
async def test_a_tunnel_by_tls_is_closed_although_the_proxy_takes_nothing(end, relays):
    async def script(peer):
        await peer.read_head()
        await peer.send(b'HTTP/1.1 200 OK\r\n\r\n')
        peer.writer.transport.pause_reading()
        peers.append(peer)
        await asyncio.Event().wait()

    async def endless():
        while True:
            yield bytes(100_000)

    peers = []
    async with Server(script, context_of('https')) as proxy:
        async with proxied(f'https://127.0.0.1:{proxy.port}') as request:
            # Without TLS of its own, so that nothing has to be answered before.
            task = asyncio.ensure_future(request(
                b'PUT', 'http://a.example/', body=endless, headers=(
                    (b'upgrade', b'x'), (b'content-length', b'%d' % 10 ** 9))))
            while not peers or not any(relay.outward for relay in relays):
                await passing(0.001)
            await passing(1.5)
            [relay] = relays
            assert not relay.is_closed
            if end == 'cancelled':
                task.cancel()
            else:
                peers[0].writer.transport.abort()
            with pytest.raises(asyncio.CancelledError if end == 'cancelled' else HttpDataError):
                await task
            await passing(1.1)
            assert relay.is_closed


@on_clock
async def test_a_tunnel_by_tls_goes_on_when_the_proxy_takes_bytes_again(relays):
    async def script(peer):
        await peer.read_head()
        await peer.send(b'HTTP/1.1 200 OK\r\n\r\n')
        await peer.read_head()
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        peer.writer.transport.pause_reading()
        await resumed.wait()
        peer.writer.transport.resume_reading()
        received.append(await peer.read(len(sent) - 3))
        await taken.wait()
        received.append(await peer.read(3))
        # The relay looks for our end at its next turn. The proxy ends before.
        await peer.send(OK)
        peer.writer.close()

    async def in_two():
        yield sent[:-3]
        await taken.wait()
        yield sent[-3:]

    sent, received, resumed, taken = os.urandom(2_000_000), [], asyncio.Event(), asyncio.Event()
    async with Server(script, context_of('https')) as proxy:
        async with proxied(f'https://127.0.0.1:{proxy.port}', socket_timeout=60,
                           get_sock=get_small_sock) as request:
            task = asyncio.ensure_future(request(
                b'PUT', 'http://a.example/', body=in_two,
                headers=((b'upgrade', b'x'), *of_length(len(sent)))))
            while not relays or relays[0].timer is None:
                await passing(0.001)
            await passing(2.5)
            resumed.set()
            while not received:
                await passing(0.001)
            await passing(2.5)
            assert relays[0].timer is None
            taken.set()
            code, _, body = await task
            assert (code, await buffered(body)) == (b'200', b'ok')
    assert b''.join(received) == sent


@pytest.mark.parametrize('how', ['close', 'reset', 'abort'])
@on_loops
async def test_the_end_of_a_proxy_is_the_end_of_its_tunnel(how, relays):
    async def script(peer):
        await peer.read_head()
        await peer.send(b'HTTP/1.1 200 OK\r\n\r\n')
        head = await peer.read_head()
        assert head.startswith(b'GET / ')
        if how == 'close':
            await peer.send(b'HTTP/1.1 101 OK\r\nupgrade: x\r\n\r\nabc')
            peer.writer.close()
        elif how == 'reset':
            peer.reset()
        else:
            peer.writer.transport.abort()

    async with Server(script, context_of('https')) as proxy:
        async with proxied(f'https://127.0.0.1:{proxy.port}') as request:
            asked = request(b'GET', 'http://a.example/', headers=((b'upgrade', b'x'),))
            if how == 'close':
                _, _, body = await asked
                assert await buffered(body) == b'abc'
            else:
                with pytest.raises(HttpDataError):
                    await asked
            await until(lambda: relays[0].is_closed)


@on_loops
async def test_a_tunnel_by_tls_whose_request_is_cancelled_is_closed(relays):
    async def script(peer):
        await peer.read_head()
        await peer.send(b'HTTP/1.1 200 OK\r\n\r\n')
        await peer.closed()
        closed.append(1)

    closed = []
    async with Server(script, context_of('https')) as proxy:
        request, close = proxied_pool(f'https://127.0.0.1:{proxy.port}',
                                      get_proxy_ssl_context=trusting)
        task = asyncio.ensure_future(request(
            b'GET', 'http://a.example/', headers=((b'upgrade', b'x'),)))
        await until(lambda: relays)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until(lambda: closed)
        await close()


def test_a_relay_whose_loop_was_closed_closes_its_sockets():
    async def main():
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        tls, other = socket.socketpair()
        for sock in (ours, tls):
            sock.setblocking(False)
        tls = ssl.create_default_context().wrap_socket(
            tls, server_hostname='a', do_handshake_on_connect=False)
        relay = lowhaio_proxy.Relay(loop, ours, tls)
        relay.move()
        return theirs, other

    theirs, other = asyncio.run(main())
    gc.collect()
    other.setblocking(False)
    while other.recv(4096):
        pass  # the beginning of a handshake
    assert theirs.recv(1) == b''
    theirs.close()
    other.close()


TLS_FAILURES = {
    'untrusted': (None, '[SSL: CERTIFICATE_VERIFY_FAILED] '),
    'closing': (trusting, '[SSL: UNEXPECTED_EOF_WHILE_READING] '),
    'plain': (trusting, '[SSL: '),
}


@pytest.mark.parametrize('name', TLS_FAILURES)
@on_loops
async def test_a_handshake_with_a_proxy_that_fails(name):
    async def script(peer):
        await peer.reader.read(1)
        if name == 'plain':
            await peer.send(b'HTTP/1.1 400 Bad Request\r\n\r\n')
            await peer.closed()

    get_context, why = TLS_FAILURES[name]
    options = {} if get_context is None else {'get_proxy_ssl_context': get_context}
    script = Tunnel(0) if name == 'untrusted' else script
    async with Server(script, context_of('https') if name == 'untrusted' else None) as proxy:
        request, close = proxied_pool(f'https://127.0.0.1:{proxy.port}', **options)
        error = await failed(
            request(b'GET', 'https://a.example/'), HttpConnectionError, ProxyError)
        assert str(error).startswith(
            'GET https://a.example:443: get_connection failed: ProxyError: the proxy '
            f'https://127.0.0.1:{proxy.port}: the TLS handshake failed: {why}')
        await close()


@on_loops
async def test_a_handshake_with_a_proxy_that_hangs_can_be_cancelled_and_a_context_may_fail():
    async def script(peer):
        started.append(1)
        await peer.closed()

    def failing():
        raise RuntimeError('why')

    started = []
    async with Server(script) as proxy:
        url = f'https://127.0.0.1:{proxy.port}'
        async with proxied(url) as request:
            task = asyncio.ensure_future(request(b'GET', 'https://a.example/'))
            await until(lambda: started)
            await turns(5)
            task.cancel('why')
            with pytest.raises(asyncio.CancelledError):
                await task
        async with proxied(url, get_proxy_ssl_context=failing) as request:
            error = await failed(request(b'GET', 'https://a.example/'), HttpConnectionError,
                                 RuntimeError)
            assert str(error).endswith('get_connection failed: RuntimeError: why')


# ------------------------------------------------------------------ which proxy is for which host

HTTP, HTTPS, ALL = 'http://h.example:1', 'http://s.example:2', 'socks5://a.example:3'
ENVIRONMENTS = [
    ({}, {}),
    ({'http_proxy': HTTP, 'https_proxy': HTTPS, 'all_proxy': ALL, 'no_proxy': 'a,b'},
     {'http': HTTP, 'https': HTTPS, 'all': ALL, 'no': 'a,b'}),
    ({'HTTP_PROXY': HTTP, 'HTTPS_PROXY': HTTPS, 'ALL_PROXY': ALL, 'NO_PROXY': 'a'},
     {'https': HTTPS, 'all': ALL, 'no': 'a'}),
    ({'https_proxy': HTTP, 'HTTPS_PROXY': HTTPS, 'no_proxy': 'a', 'NO_PROXY': 'b'},
     {'https': HTTP, 'no': 'a'}),
    ({'https_proxy': '', 'HTTPS_PROXY': HTTPS, 'http_proxy': '', 'no_proxy': '', 'NO_PROXY': 'b'},
     {'https': HTTPS, 'no': 'b'}),
    ({'Http_Proxy': HTTP, 'http_proxy': 'h.example:1', 'REQUEST_METHOD': 'GET'}, {'http': HTTP}),
]


@pytest.mark.parametrize('environ, expected', ENVIRONMENTS)
def test_the_environment_is_read_as_curl_reads_it(environ, expected):
    proxies = from_environment(environ)
    names = {key: value if key == 'no' else value.name for key, value in proxies.items()}
    assert names == expected


def test_the_environment_is_that_of_the_process_and_a_bad_variable_is_named(monkeypatch):
    for name in ('http_proxy', 'https_proxy', 'all_proxy', 'no_proxy'):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv('HTTPS_PROXY', 'https://user:secret@[::1]')
    assert repr(from_environment()) == "{'https': <Proxy https://[::1]:443 with credentials>}"
    monkeypatch.setenv('HTTPS_PROXY', 'https://user:secret@:x')
    with pytest.raises(ValueError, match='^the environment variable https_proxy: a proxy must be '
                                         "like 'http://user:password@proxy.example:3128', got "
                                         'another str$'):
        from_environment()


# Tests outside run curl on this table.
NO_PROXY = [
    ('a.example', 'example', True), ('a.example', '.example', True), ('example', '.example', True),
    ('a.example', 'example.', True), ('a.b.example', 'b.example', True),
    ('a.example', '..example', False), ('badexample', 'example', False),
    ('a.example', 'A.EXAMPLE', True), ('A.Example', 'a.example', True),
    ('a.example', '*', True), ('a.example', '*,b', False), ('a.example', 'b,*', False),
    ('a.example', '*.example', False), ('a.example', '*example', False),
    ('a.example', 'b, a.example', True), ('a.example', 'b ,a.example', True),
    ('a.example', ',,a.example,', True), ('a.example', ' a.example ', True),
    ('a.example', 'a.example b', True), ('a.example', '', False), ('a.example', '.', False),
    ('a.example', 'a.example;b', False), ('a.example', 'a.example:80', False),
    ('a.example:81', 'a.example:81', False), ('a.example:81', 'a.example', True),
    ('localhost', 'x', False), ('127.0.0.1', 'localhost', False), ('127.0.0.1', '127.0.0.1', True),
    ('127.0.0.2', '127.0.0.0/8', True), ('10.1.2.3', '10.1.2.3/32', True),
    ('10.1.2.3', '10.1.2.4/31', False), ('10.1.2.3', '10.1.2.2/31', True),
    ('10.1.2.3', '0.0.0.0/0', False), ('10.1.2.3', '10.1.2.3/0', True),
    ('10.1.2.3', '10.0.0.0/33', False), ('10.1.2.3', '10.0.0.0/x', False),
    ('10.1.2.3', '10.0.0.0/8x', True), ('10.1.2.3', '10.1.2.3/', True),
    ('10.1.2.3', '10.0.0.0/-1', False), ('10.1.2.3', '2.3', False), ('10.1.2.3', '.2.3', False),
    ('10.1.2.3', '10.1.2.3.', False), ('10.1.2.3', '010.1.2.3', False),
    ('10.1.2.3', '10.1.2.3:80', False), ('10.1.2.3', '::/8', False),
    ('[::1]', '::1', True), ('[::1]', '[::1]', False),
]
# What curl has learned since 7.88.
NO_PROXY_OF_NEWER_CURL = [
    ('a.example', 'b a.example', False), ('a.example', 'b\ta.example', False),
    ('[::1]', '0:0:0:0:0:0:0:1', True), ('[fd00::1]', 'fd00::/8', True),
    ('[fd00::1]', 'fd00::1/128', True), ('[fd00::1]', 'fd00::/129', False),
    ('[fe80::1%25lo]', 'fe80::1', True), ('[FD00::1]', 'fd00:0::1', True),
    ('[::ffff:10.1.2.3]', '10.1.2.3', False),
]


@on_one_loop
async def test_hosts_without_a_proxy_are_those_of_curl():
    for host, no_proxy, is_direct in NO_PROXY + NO_PROXY_OF_NEWER_CURL:
        with row((host, no_proxy)):
            proxies = {'all': 'http://127.0.0.1:1', 'no': no_proxy}
            async with proxied(proxies, get_sock=no_socket, get_dns_resolver=no_names) as request:
                with pytest.raises(HttpConnectionError) as caught:
                    await request(b'GET', f'http://{host}/')
            assert (' through ' not in str(caught.value)) == is_direct


def no_socket(family):
    raise ZeroDivisionError


def no_names(**kwargs):
    raise ZeroDivisionError


EXPECTED = "a proxy must be like 'http://user:password@proxy.example:3128', "
SOCKS_LENGTHS = 'the user and the password of a SOCKS5 proxy must have 1 to 255 bytes'
FIELDS = 'headers must have tokens as names, and no control characters in values'

AUTH = 'auth must be a pair of str, user and password'

BAD_PROXIES = {
    'http://user:secret@:1': EXPECTED + 'got another str',
    'http://user:secret@a.example/path': EXPECTED + 'got another str',
    'http://user:secret@a.example?': EXPECTED + 'got another str',
    'http://user:secret@a.example:123456': EXPECTED + 'got another str',
    '': EXPECTED + 'got another str',
    'socks4://user:secret@a.example':
    'a proxy must be of http, https, socks5, socks5h, got socks4',
    'http://user:secret@a..b': EXPECTED + "got the host 'a..b'",
    'http://user:secret@a.example:0': 'a proxy must have a port from 1 to 65535, got 0',
    'http://user:secret@a.example:65536': 'a proxy must have a port from 1 to 65535, got 65536',
    'http://user%0a:secret@a.example':
    'the user and the password of a proxy must not have control characters',
    'http://user%3a:secret@a.example': 'the user of an HTTP proxy must not have a colon',
    'socks5://user@a.example': SOCKS_LENGTHS, 'socks5://:secret@a.example': SOCKS_LENGTHS,
    f'socks5://user:{"p" * 256}@a.example': SOCKS_LENGTHS,
}


@pytest.mark.parametrize('url', BAD_PROXIES)
def test_a_proxy_that_is_none_is_refused_without_its_credentials(url):
    with pytest.raises(ValueError, match=f'^{re.escape(BAD_PROXIES[url])}$'):
        proxied_pool(url)


BAD_ARGUMENTS = [
    (lambda: Proxy(b'http://a'), ValueError, EXPECTED + 'got another bytes'),
    (lambda: Proxy('a', auth=('user',)), TypeError, AUTH),
    (lambda: Proxy('a', auth=(b'user', b'secret')), TypeError, AUTH),
    (lambda: Proxy('a', headers=((b'a b', b''),)), ValueError, FIELDS),
    (lambda: Proxy('a', headers=((b'a', b'x\r\ny: 1'),)), ValueError, FIELDS),
    (lambda: Proxy('a', headers=(('a', 'b'),)), TypeError,
     'headers must be pairs of name and value, both bytes'),
    (lambda: proxied_pool(1), TypeError, 'a proxy must be a str, a Proxy or None, got int'),
    (lambda: proxied_pool({'ftp': 'a'}), ValueError,
     "proxies must have http, https, all and no as keys, got 'ftp'"),
    (lambda: proxied_pool({'no': 1}), TypeError, "proxies['no'] must be a str, got int"),
    (lambda: proxied_pool({'all': b'a'}), TypeError,
     'a proxy must be a str, a Proxy or None, got bytes'),
    (lambda: proxied_pool('a', get_connection=unwanted), TypeError,
     'proxied_pool must not have get_connection: it has one of its own'),
    (lambda: proxied_pool('a', on_event=5), TypeError,
     'on_event must be a function of an event, got int'),
    (lambda: proxied_pool('a', keep_alive_timeout=-1), ValueError,
     'keep_alive_timeout must be a number of seconds, got -1'),
]


@pytest.mark.parametrize('make, kind, text', BAD_ARGUMENTS)
def test_bad_arguments_are_refused(make, kind, text):
    with pytest.raises(kind) as caught:
        make()
    assert str(caught.value) == text


def test_a_repr_shows_a_proxy_without_its_credentials():
    proxy = Proxy('HTTPS://user:secret@Proxy.Example.', headers=((b'x-secret', b'secret'),))
    assert repr(proxy) == '<Proxy https://proxy.example:443 with credentials>'
    assert repr(Proxy('[FE80::1%25lo]')) == '<Proxy http://[fe80::1%lo]:80>'
    assert Proxy('socks5h://a').name == 'socks5h://a:1080'
    pools = lowhaio_proxy.Pools(lambda *origin: proxy, trusting, {})
    way = pools.way_to(b'GET', lowhaio_proxy.origin_of('http://a.example/'))
    turn = lowhaio_proxy.Turn(way.login, b'GET', b'/')
    turn.fields()
    shown = [repr(each) for each in (
        pools, way, way.login, turn, lowhaio_proxy.Tunnels(proxy, way.login, pools))]
    assert shown == [
        '<Pools with 1 proxies>', '<Way through <Proxy https://proxy.example:443 with '
        'credentials>, 0 requests>', '<Login challenge=None>', '<Turn count=0>',
        '<Tunnels through <Proxy https://proxy.example:443 with credentials>>']


@on_one_loop
async def test_what_a_closed_relay_had_planned_does_nothing():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        relay = lowhaio_proxy.Relay(asyncio.get_running_loop(), ours, theirs)
        relay.close(EOFError())
        relay.move()
        assert repr(relay) == '<Relay closed, 0 bytes inward, 0 outward>'


@on_one_loop
async def test_a_function_chooses_the_proxy_of_each_origin():
    def choose(*origin):
        asked.append(origin)
        return choices.get(origin[1])

    asked, scripts = [], [Answering(OK), Answering(OK), Answering(OK)]
    async with Server(scripts[0]) as one, Server(scripts[1]) as two, Server(scripts[2]) as none:
        choices = {'a.example': one.origin, 'b.example': Proxy(two.origin)}
        async with proxied(choose) as request:
            for host in ('a.example', 'B.Example:81', 'a.example'):
                await get(request, f'http://{host}/')
            await get(request, none.url)
            choices['a.example'] = two.origin
            await get(request, 'http://a.example/')
    assert asked == [('http', 'a.example', 80), ('http', 'b.example', 81),
                     ('http', 'a.example', 80), ('http', '127.0.0.1', none.port),
                     ('http', 'a.example', 80)]
    assert [len(script.heads) for script in scripts] == [2, 2, 1]
    # Each choice has connections of its own.
    assert scripts[1].connections == [0, 1]


@on_one_loop
async def test_a_mapping_chooses_by_the_scheme():
    proxies = {'http': 'http://127.0.0.1:1', 'all': Proxy('http://127.0.0.1:2'), 'no': None}
    async with proxied(proxies, get_sock=no_socket) as request:
        for scheme, port in (('http', 1), ('https', 2)):
            with pytest.raises(HttpConnectionError, match=f'http://127.0.0.1:{port}'):
                await request(b'GET', f'{scheme}://a.example/')


@on_one_loop
async def test_a_choice_that_fails_or_is_none_is_a_refusal():
    def failing(*origin):
        raise KeyError('secret')

    for choose, cause, why in [
            (failing, KeyError, 'choosing a proxy failed: KeyError'),
            (lambda *origin: 1, TypeError, 'a proxy must be a str, a Proxy or None, got int'),
            (lambda *origin: 'a b', ValueError, EXPECTED + "got the host 'a b'")]:
        async with proxied(choose) as request:
            error = await failed(request(b'GET', 'http://a.example/'), HttpConnectionError, cause,
                                 f'GET http://a.example:80, refused: {why}')
            assert is_lasting(error)
            with pytest.raises(HttpConnectionError, match='^str http://a.example:80, refused: '):
                await request('GET', 'http://a.example/')


@on_loops
async def test_only_so_many_proxies_are_remembered(monkeypatch):
    monkeypatch.setattr(lowhaio_proxy, 'MAX_PROXIES', 2)
    script = Answering(OK)
    async with Server(script) as server:
        numbers = iter((1, 2, 1, 3, 1, 2))
        async with proxied(lambda *origin: f'http://{next(numbers)}:p@127.0.0.1:{server.port}'
                           ) as request:
            for _ in range(6):
                await get(request, 'http://a.example/')
    # The second one was forgotten when the third came.
    assert script.connections == [0, 1, 0, 2, 0, 3]


@on_loops
async def test_a_proxy_with_a_request_in_progress_is_not_forgotten(monkeypatch):
    async def script(peer):
        while True:
            await peer.read_head()
            connections.append(peer.index)
            if peer.index == 0:
                await release.wait()
            await peer.send(OK)

    monkeypatch.setattr(lowhaio_proxy, 'MAX_PROXIES', 1)
    connections, release = [], asyncio.Event()
    async with Server(script) as server:
        users = iter('abca')
        async with proxied(lambda *origin: f'http://{next(users)}:p@127.0.0.1:{server.port}'
                           ) as request:
            task = asyncio.ensure_future(get(request, 'http://a.example/'))
            await until(lambda: connections)
            await get(request, 'http://a.example/')
            await get(request, 'http://a.example/')
            release.set()
            await task
            await get(request, 'http://a.example/')
    assert connections == [0, 1, 2, 0]


@on_one_loop
async def test_close_closes_all_and_later_requests_are_refused():
    async with Server(Answering(OK)) as server:
        request, close = proxied_pool(server.origin)
        await get(request, 'http://a.example/')
        await close()
        await close()
        with pytest.raises(HttpConnectionError, match='the pool is closed'):
            await request(b'GET', 'http://a.example/')


@on_loops
async def test_events_of_all_pools_have_numbers_of_their_own():
    events = []
    async with Server(Answering(OK)) as one, Server(Answering(OK, None)) as two:
        async with proxied({'all': one.origin, 'no': '127.0.0.1'}, on_event=events.append
                           ) as request:
            await get(request, 'http://a.example/')
            await get(request, two.url)
            await get(request, 'http://b.example/')
            with pytest.raises(HttpDataError):
                await get(request, two.url)
            with pytest.raises(HttpConnectionError):
                await get(request, 'https://a.example:1/')

    def of(kind, *fields):
        return [tuple(getattr(event, field) for field in fields) for event in events
                if isinstance(event, kind)]

    assert of(RequestStarted, 'request', 'origin') == [
        (1, one.origin), (2, two.origin), (3, one.origin), (4, two.origin),
        (5, 'https://a.example:1')]
    assert of(BodyEnded, 'request') == [(1,), (2,), (3,)]
    assert of(ConnectionTaken, 'request', 'connection') == [(1, 1), (2, 2), (3, 1), (4, 2)]
    assert sorted(of(ConnectionClosed, 'connection')) == [(1,), (2,)]


def test_a_renumbered_pool_forgets_what_has_ended():
    numbers = lowhaio_proxy.Renumbered([].append, (iter((7,)), iter((8,))))
    numbers(RequestStarted(0, 1, b'GET', 'a', b'/'))
    assert repr(numbers) == '<Renumbered 1 requests, 0 connections>'
    numbers(BodyEnded(0, 1, 0, None))
    assert repr(numbers) == '<Renumbered 0 requests, 0 connections>'


# ------------------------------------------------------------------------------------ the README

BLOCKS = python_blocks(pathlib.Path(__file__).with_name('README.md'))


class Website(Tunnel):
    """A proxy of HTTP and SOCKS5 in a thread, and behind it a website, wherever one asks for."""

    async def __call__(self, peer):
        if await peer.read(1) == b'C':
            await peer.read_head()
            await peer.send(b'HTTP/1.1 200 OK\r\n\r\n')
        else:
            await peer.read(2)
            await peer.send(b'\5\0')
            await peer.read(4)
            await peer.read((await peer.read(1))[0] + 2)
            await peer.send(b'\5\0\0\1' + bytes(6))
        await self.pass_on(peer)

    def __enter__(self):
        started, self.loop = threading.Event(), asyncio.new_event_loop()
        self.stop = asyncio.Event()
        self.thread = threading.Thread(
            target=self.loop.run_until_complete, args=(self.serve(started),))
        self.thread.start()
        started.wait()
        return self.proxy.port

    async def serve(self, started):
        async with Server(Answering(OK), context_for('*.example.com')) as server:
            self.port = server.port
            async with Server(self) as self.proxy:
                started.set()
                await self.stop.wait()

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join()
        self.loop.close()


class Misled(socket.socket):
    """A socket that connects to the port of this machine, whatever it is told."""

    def connect(self, address):
        super().connect(('127.0.0.1', self.port))


def misled_to(port):
    def get_sock(family):
        sock = Misled(family)
        sock.setblocking(False)
        sock.port = port
        return sock

    return get_sock


async def anywhere(host):
    return [ip_address('192.0.2.1')]


@pytest.mark.parametrize('block', BLOCKS)
def test_a_block_of_the_readme_runs_as_it_stands(block, capsys, monkeypatch):
    monkeypatch.setenv('https_proxy', 'http://proxy.example:3128')
    with Website() as port:
        monkeypatch.setattr(lowhaio_proxy, 'proxied_pool', functools.partial(
            proxied_pool, get_dns_resolver=resolving(anywhere), get_sock=misled_to(port),
            get_ssl_context=trusting))
        run_block(block)
    assert capsys.readouterr().out == "b'200' b'ok'\n"
    assert len(BLOCKS) == 3
