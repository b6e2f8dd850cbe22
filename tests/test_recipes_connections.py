"""The recipes for connections, with servers and proxies that are scripted."""

import asyncio
import base64
import contextlib
import ipaddress
import re

import aiodnsresolver
import pytest

from lowhaio import HttpConnectionError, HttpDnsError, HttpError, HttpTlsError
from tests.harness import (
    OK,
    PATIENCE,
    SCHEMES,
    Answering,
    Server,
    Streams,
    Unwanted,
    always,
    context_of,
    failed,
    get,
    listening,
    on_loops,
    on_loops_at_once,
    pool,
    recipe,
    row,
    through_unix_socket,
    trusting,
    turns,
    unix_streams,
    unwanted,
    url_of_proxy,
)


async def copy(reader, writer):
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def tunnel(reader, writer, port, first=b''):
    """Pass on what comes from each side to the other, after some bytes of the proxy's own."""
    server_reader, server_writer = await asyncio.open_connection('127.0.0.1', port)
    writer.write(first)
    await asyncio.gather(copy(reader, server_writer), copy(server_reader, writer))


class Proxy:
    """An HTTP proxy: whatever it is asked for is a port of its own machine."""

    def __init__(self, port, *responses):
        self.port = port
        self.responses = responses  # in place of a tunnel
        self.heads = []
        self.ends = 0

    async def __call__(self, reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            self.heads.append(await reader.readuntil(b'\r\n\r\n'))
            if self.responses:
                writer.write(self.responses[len(self.heads) - 1])
                assert await reader.read() == b''
            else:
                await tunnel(reader, writer, self.port,
                             b'HTTP/1.1 100 Continue\r\n\r\n'
                             b'HTTP/1.1 200 Connection established\r\ncontent-length: 5\r\n\r\n')
        self.ends += 1
        writer.close()


@SCHEMES
@on_loops
async def test_recipe_through_a_unix_socket(scheme, tmp_path):
    streams = Streams(context_of(scheme))
    async with unix_streams(streams, tmp_path) as (get_connection, _):
        async with pool(get_connection=get_connection, get_ssl_context=trusting) as request:
            for _ in range(2):
                assert (await get(request, f'{scheme}://name.test/'))[2] == b'ok'
        await streams.all_ended()
    assert streams.connections == [0, 0]
    path = str(tmp_path / 'nothing')
    async with pool(get_connection=through_unix_socket(path)) as request:
        error = await failed(
            request(b'GET', 'http://name.test/'), HttpConnectionError, FileNotFoundError)
        assert str(error).startswith('GET http://name.test:80: get_connection failed: '
                                     'FileNotFoundError: [Errno 2]')


@SCHEMES
@on_loops
async def test_recipe_through_an_http_proxy(scheme):
    through_http_proxy = recipe('http-proxy').through_http_proxy
    fields = ((b'proxy-authorization', b'Bearer a'),)
    async with Server(Answering(OK), context_of(scheme)) as server:
        proxy = Proxy(server.port)
        async with listening(proxy) as address:
            async with pool(get_connection=through_http_proxy(url_of_proxy(address), fields),
                            get_ssl_context=trusting, get_dns_resolver=unwanted) as request:
                for host in ('name.test', '127.0.0.1:81', 'name.test'):
                    assert (await get(request, f'{scheme}://{host}/'))[2] == b'ok'
            async with pool(get_connection=through_http_proxy(
                    url_of_proxy(address) + '/')) as request:
                with contextlib.suppress(HttpError):
                    await get(request, f'{scheme}://[2001:DB8::1]/')
    port = 443 if scheme == 'https' else 80
    assert proxy.heads == [
        b'CONNECT name.test:%d HTTP/1.1\r\nhost: name.test:%d\r\n'
        b'proxy-authorization: Bearer a\r\n\r\n' % (port, port),
        b'CONNECT 127.0.0.1:81 HTTP/1.1\r\nhost: 127.0.0.1:81\r\n'
        b'proxy-authorization: Bearer a\r\n\r\n',
        b'CONNECT [2001:db8::1]:%d HTTP/1.1\r\nhost: [2001:db8::1]:%d\r\n\r\n' % (port, port)]


@pytest.mark.parametrize('host, user, sent', [
    ('127.0.0.1', '', None),
    ('127.0.0.1', 'u:p@', b'u:p'),
    ('127.0.0.1', 'u@', b'u:'),
    ('127.0.0.1', ':p@', b':p'),
    ('127.0.0.1', 'u:p:q@', b'u:p:q'),
    ('127.0.0.1', '%C3%A9%40x:%3A%2F%25%20@', 'é@x::/% '.encode()),
    ('::1', '', None),
    ('::1', 'u:p@', b'u:p'),
])
@on_loops
async def test_recipe_an_http_proxy_by_its_url(host, user, sent):
    through_http_proxy = recipe('http-proxy').through_http_proxy
    async with Server(Answering(OK)) as server:
        proxy = Proxy(server.port)
        async with listening(proxy, host) as address:
            url = url_of_proxy(address, user)
            async with pool(get_connection=through_http_proxy(url)) as request:
                assert (await get(request, 'http://name.test/'))[2] == b'ok'
    [head] = proxy.heads
    credentials = re.findall(rb'\r\nproxy-authorization: Basic (.*)\r\n', head)
    assert credentials == ([] if sent is None else [base64.b64encode(sent)])
    assert head.count(b'\r\n') == 3 + len(credentials)


@pytest.mark.parametrize('url', [
    '', 'name.test:1', 'https://name.test', 'http://', 'http://u:secret/@name.test',
    'http://u:secret@', 'http://u:secr@et@name.test', 'http://u:secret@name.test:x',
    'http://u:secret@name.test/path', 'http://u:secret@::1', 'http://[::1'])
def test_recipe_an_http_proxy_whose_url_is_none(url):
    with pytest.raises(ValueError, match='must be like http://user:password@192.0.2.1') as caught:
        recipe('http-proxy').through_http_proxy(url)
    assert 'secr' not in str(caught.value)


@on_loops
async def test_recipe_through_an_http_proxy_that_refuses():
    module = recipe('http-proxy')
    through_http_proxy, ProxyError = module.through_http_proxy, module.ProxyError
    said = 'GET https://name.test:443: get_connection failed: ProxyError: the proxy answered '
    refusal = (b'HTTP/1.1 407 Proxy Authentication Required\r\n'
               b'Proxy-Authenticate: Basic realm="a: b"\r\ncontent-length: 0\r\n\r\n')
    answers = {
        b'HTTP/1.0 502\r\n\r\n<p>No such\x1b host</p>\r\nmore':
            "b'HTTP/1.0 502': b'<p>No such\\x1b host</p>'",
        b'HTTP/1.1 403 No\ncontent-length: 9\n\n\n <p>\nb': "b'HTTP/1.1 403 No': b'<p>'",
        b'HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n':
            "b'HTTP/1.1 403 No': b'abc'",
        b'HTTP/1.1 503 \r\n\r\n' + b'a' * 20_000: f"b'HTTP/1.1 503': {b'a' * 200!r}",
        b'SSH-2.0-a\r\n\r\n\r\n': "b'SSH-2.0-a'",
        b'HTTP/1.1 2000\r\ncontent-length: 0\r\n\r\n': "b'HTTP/1.1 2000'",
        b'HTTP/2 200\r\ncontent-length: 0\r\n\r\n': "b'HTTP/2 200'",
        bytes(20_000): repr(bytes(60)),
    }
    proxy = Proxy(0, refusal, *answers)
    async with listening(proxy) as address:
        url = url_of_proxy(address, 'user:secret@')
        async with pool(get_connection=through_http_proxy(url)) as request:
            error = await failed(
                request(b'GET', 'https://name.test/'), HttpConnectionError, ProxyError,
                said + "b'HTTP/1.1 407 Proxy Authentication Required'")
            assert (error.__cause__.code, error.__cause__.is_lasting) == (b'407', True)
            assert error.__cause__.headers == (
                (b'proxy-authenticate', b'Basic realm="a: b"'), (b'content-length', b'0'))
            for shown in answers.values():
                await failed(request(b'GET', 'https://name.test/'), HttpConnectionError,
                             ProxyError, said + shown)
    assert proxy.ends == len(proxy.heads) == 1 + len(answers)
    async with listening(hanging_up) as address:
        async with pool(get_connection=through_http_proxy(url_of_proxy(address))) as request:
            await failed(request(b'GET', 'https://name.test/'), HttpConnectionError, ProxyError,
                         said + "b''")


@on_loops_at_once
async def test_recipe_an_http_proxy_that_refuses_without_saying_why():
    """Its connection stays open, so that the end of what it says does not show."""
    module = recipe('http-proxy')
    async with listening(Proxy(0, b'HTTP/1.1 403 No\r\n\r\n')) as address:
        get_connection = module.through_http_proxy(url_of_proxy(address))
        async with pool(get_connection=get_connection, socket_timeout=PATIENCE) as request:
            await failed(
                request(b'GET', 'http://name.test/'), HttpConnectionError, module.ProxyError,
                "GET http://name.test:80: get_connection failed: ProxyError: the proxy answered "
                "b'HTTP/1.1 403 No'")
    assert asyncio.current_task().cancelling() == 0


async def hanging_up(reader, writer):
    await reader.read(1)
    writer.write_eof()
    await reader.read()
    writer.close()


@pytest.mark.parametrize('head', [
    b'HTTP/1.1 200 \r\n\r\n', b'HTTP/1.0 200 OK\n\n', b'HTTP/1.1 200\na: b\r\n\n',
    b'HTTP/1.1 299 OK\r\na: b\n\r\n', b'HTTP/1.1 100 Continue\n\nHTTP/1.1 200 OK\n\n'])
@on_loops
async def test_recipe_through_an_http_proxy_takes_no_byte_of_the_server(head):
    """A response that comes at once is one to no request."""
    async def script(reader, writer):
        await reader.readuntil(b'\r\n\r\n')
        writer.write(head + OK)
        await reader.read()
        writer.close()

    async with listening(script) as address:
        through_http_proxy = recipe('http-proxy').through_http_proxy
        get_connection = through_http_proxy(url_of_proxy(address))
        with await get_connection('http', 'name.test', 80) as sock:
            assert await asyncio.get_running_loop().sock_recv(sock, 100) == OK


class SocksProxy:
    """A SOCKS5 proxy: whatever it is asked for is a port of its own machine."""

    def __init__(self, port, method=0, code=0, bound=b'\1\0\0\0\0'):
        self.port = port
        self.method = method
        self.code = code
        self.bound = bound
        self.asked = []

    async def __call__(self, reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            assert (await reader.readexactly(1)) == b'\5'
            methods = await reader.readexactly((await reader.readexactly(1))[0])
            assert methods == b'\0'
            writer.write(bytes((5, self.method)))
            assert (await reader.readexactly(3)) == b'\5\1\0'
            kind = (await reader.readexactly(1))[0]
            length = {1: 4, 4: 16}.get(kind) or (await reader.readexactly(1))[0]
            host = await reader.readexactly(length)
            port = int.from_bytes(await reader.readexactly(2), 'big')
            self.asked.append((kind, host, port))
            answer = bytes((5, self.code, 0)) + self.bound + b'\0\0'
            if self.code:
                writer.write(answer)
                assert await reader.read() == b''
            else:
                await tunnel(reader, writer, self.port, answer)
        writer.close()


@SCHEMES
@on_loops
async def test_recipe_through_a_socks_proxy(scheme):
    through_socks_proxy = recipe('socks-proxy').through_socks_proxy
    async with Server(Answering(OK), context_of(scheme)) as server:
        for bound, at in ((b'\1\0\0\0\0', '127.0.0.1'), (b'\4' + bytes(16), '::1'),
                          (b'\3\4name', '127.0.0.1')):
            proxy = SocksProxy(server.port, bound=bound)
            async with listening(proxy, at) as address:
                async with pool(get_connection=through_socks_proxy(address[:2]),
                                get_ssl_context=trusting, get_dns_resolver=unwanted) as request:
                    for host in ('name.test', '127.0.0.1:81', 'name.test'):
                        assert (await get(request, f'{scheme}://{host}/'))[2] == b'ok'
                    with contextlib.suppress(HttpTlsError):
                        await get(request, f'{scheme}://[::1]:82/')
            port = 443 if scheme == 'https' else 80
            assert proxy.asked == [
                (3, b'name.test', port), (1, b'\x7f\0\0\1', 81), (4, bytes(15) + b'\1', 82)]


@on_loops
async def test_recipe_through_a_socks_proxy_that_refuses():
    async def check(proxy, cause, text):
        async with listening(proxy) as address:
            get_connection = recipe('socks-proxy').through_socks_proxy(address)
            async with pool(get_connection=get_connection) as request:
                await failed(request(b'GET', 'http://name.test/'), HttpConnectionError, cause,
                             'GET http://name.test:80: get_connection failed: ' + text)

    await check(SocksProxy(0, code=2), ConnectionError, 'ConnectionError: the proxy answered 2')
    await check(SocksProxy(0, method=255), ConnectionError,
                'ConnectionError: the proxy wants authentication')
    await check(hanging_up, EOFError, 'the proxy closed the connection')


@pytest.mark.parametrize('page, name', [
    ('http-proxy', 'through_http_proxy'), ('socks-proxy', 'through_socks_proxy')])
@on_loops_at_once
async def test_recipe_a_proxy_that_says_nothing_is_left_in_time(page, name):
    async def silent(reader, writer):
        started.set()
        await reader.read()
        ended.append(True)
        writer.close()

    started, ended = asyncio.Event(), []
    async with listening(silent) as address:
        proxy = address if 'socks' in name else url_of_proxy(address)
        get_connection = getattr(recipe(page), name)(proxy)
        async with pool(get_connection=get_connection, socket_timeout=0.1) as request:
            await failed(
                request(b'GET', 'http://name.test/'), HttpConnectionError, TimeoutError)
        async with pool(get_connection=get_connection) as request:
            started.clear()
            task = asyncio.create_task(request(b'GET', 'http://name.test/'))
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert ended == [True, True]


@on_loops
async def test_recipe_a_test_double_without_a_port():
    async def handler(reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError):  # once the client has closed
            while True:
                heads.append(await reader.readuntil(b'\r\n\r\n'))
                writer.write(OK)
        writer.close()

    heads = []
    to_handler = recipe('testing-with-a-socket').to_handler
    async with asyncio.TaskGroup() as group:
        async with pool(get_connection=to_handler(handler, group)) as request:
            for _ in range(2):
                assert (await get(request, 'http://name.test/a'))[2] == b'ok'
    assert heads == [b'GET /a HTTP/1.1\r\nhost: name.test\r\n\r\n'] * 2


@on_loops
async def test_recipe_a_test_double_may_be_cancelled_while_it_connects():
    async with asyncio.TaskGroup() as group:
        get_connection = recipe('testing-with-a-socket').to_handler(unwanted, group)
        async with pool(get_connection=get_connection) as request:
            task = asyncio.create_task(request(b'GET', 'http://name.test/'))
            await turns(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


NOT_PUBLIC = (
    '127.0.0.1', '127.255.255.254', '10.0.0.1', '172.16.0.1', '192.168.0.1', '169.254.169.254',
    '0.0.0.0', '100.64.0.1', '192.0.2.1', '224.0.0.1', '240.0.0.1', '255.255.255.255',
    '::', '::1', 'fe80::1', 'fe80::1%lo', 'fc00::1', 'fec0::1', 'ff02::1', 'ff0e::1',
    '2001:db8::1', '2001::1', '::ffff:127.0.0.1', '::ffff:10.0.0.1', '::ffff:169.254.169.254',
    '64:ff9b::127.0.0.1', '64:ff9b::a9fe:a9fe', '64:ff9b:1::1', '2002:7f00:1::', '2002:a00:1::',
    '2002:a9fe:a9fe::1', '::127.0.0.1', '::10.0.0.1')

PUBLIC = ('8.8.8.8', '1.1.1.1', '193.0.6.139', '2606:4700:4700::1111', '2a00:1450:4001::1',
          '::ffff:8.8.8.8', '64:ff9b::808:808', '2002:808:808::1')


@on_loops
async def test_recipe_names_of_addresses_that_are_not_public_are_refused():
    async def lookup(addresses, kind, cause, message=None):
        module.get_dns_resolver_default = pinned({'name.test': addresses})
        with row(addresses):
            async with pool(get_dns_resolver=module.get_public_resolver,
                            get_sock=get_sock) as request:
                await failed(request(b'GET', 'http://name.test/'), kind, cause, message)

    def get_sock(family):
        raise Unwanted('it went on to connect')

    pinned = recipe('pinned-addresses').pinned
    module = recipe('untrusted-urls')
    for address in NOT_PUBLIC:
        await lookup([address], HttpDnsError, module.NotPublic,
                     'GET http://name.test:80: resolving name.test failed: '
                     f'NotPublic: {ipaddress.ip_address(address)} is not public')
    for address in PUBLIC:
        await lookup([address], HttpConnectionError, Unwanted)
    # One of several is enough.
    await lookup(['8.8.8.8', '127.0.0.1'], HttpDnsError, module.NotPublic)


# URLs whose host is an address, in any form that lowhaio takes for one: it is never resolved.
LITERALS = {
    'http://127.0.0.1/': '127.0.0.1',
    'http://127.0.0.1./': '127.0.0.1',
    'http://127.0.0.1:8080/': '127.0.0.1',
    'http://\uff11\uff12\uff17.0.0.1/': '127.0.0.1',
    'http://\u2460\u2461\u2466.0.0.1/': '127.0.0.1',
    'http://127\u30020\u30020\u30021/': '127.0.0.1',
    'https://169.254.169.254/': '169.254.169.254',
    'http://0.0.0.0/': '0.0.0.0',
    'http://[::1]/': '::1',
    'http://[::]/': '::',
    'http://[0:0::0001]/': '::1',
    'http://[::ffff:127.0.0.1]/': '::ffff:7f00:1',
    'http://[::ffff:7f00:1]/': '::ffff:7f00:1',
    'http://[64:ff9b::7f00:1]/': '64:ff9b::7f00:1',
    'http://[fe80::1%25lo]/': 'fe80::1',
    'http://[fe80::1%lo]/': 'fe80::1',
}

# Those that others may take for addresses, and that are refused before anything is resolved.
NO_LITERALS = (
    'http://127.1/', 'http://0x7f.1/', 'http://0x7f.0.0.1/', 'http://0x7f000001/',
    'http://2130706433/', 'http://0177.0.0.1/', 'http://017700000001/', 'http://0/',
    'http://127.0.0.1../', 'http://127.0.0.01/', 'http://127.0.0.256/', 'http://127.0.0.1.1/',
    'http://a@127.0.0.1/', 'http://a:b@127.0.0.1/', 'http://8.8.8.8:80@127.0.0.1/',
    'http://127.0.0.1\\@8.8.8.8/', 'http://127.0.0.1\\.test/', 'http://127%2e0.0.1/',
    'http://%31%32%37.0.0.1/', 'http://[::1', 'http://[127.0.0.1]/', 'http://::1/',
    'http://[::1]a/', 'http://[::1%]/', 'http://[::1%25/]/', 'http:///127.0.0.1/',
    'http:127.0.0.1', '//127.0.0.1/', 'http://\uff10x7f.1/', 'http://127.0.0.1 /',
    'http://127.0.0.1\t/', 'file:///etc/passwd')


@on_loops
async def test_recipe_connections_to_addresses_that_are_not_public_are_refused():
    """All of them pass through the socket, however the address came about."""
    module = recipe('untrusted-urls')
    get_sock, NotPublic = module.get_public_sock, module.NotPublic
    async with pool(get_sock=get_sock, get_dns_resolver=unwanted) as request:
        for url, address in LITERALS.items():
            with row(url):
                error = await failed(request(b'GET', url), HttpConnectionError, NotPublic)
                shown = ipaddress.ip_address(address)  # as this version of Python shows it
                assert str(error).endswith(f': NotPublic: {shown} is not public')
        for url in NO_LITERALS:
            with row(url):
                error = await failed(request(b'GET', url), HttpConnectionError, ValueError)
                assert ', refused: url must ' in str(error)
    async with pool(get_sock=get_sock, get_dns_resolver=always('127.0.0.1')) as request:
        await failed(
            request(b'GET', 'http://name.test/'), HttpConnectionError, NotPublic,
            'GET http://name.test:80: connecting failed: '
            '127.0.0.1: NotPublic: 127.0.0.1 is not public')


@SCHEMES
@on_loops
async def test_recipe_a_socket_that_looks_at_its_address_is_used_like_any_other(scheme):
    asked = []
    module = recipe('untrusted-urls')
    module.check_public = lambda address: asked.append(str(address))
    async with Server(Answering(OK), context_of(scheme)) as server:
        async with pool(get_sock=module.get_public_sock, get_ssl_context=trusting) as request:
            for _ in range(2):
                assert (await get(request, server.url))[2] == b'ok'
        assert len(server.peers) == 1
    assert asked == ['127.0.0.1']


@on_loops
async def test_recipe_the_resolver_of_the_system():
    asked = []
    get_system_resolver = recipe('system-resolver').get_system_resolver

    def counting(**kwargs):
        resolve, clear_cache = get_system_resolver(**kwargs)

        async def resolve_counting(host, record_type, **kwargs):
            asked.append((host, record_type))
            return await resolve(host, record_type, **kwargs)

        return resolve_counting, clear_cache

    async with Server(Answering(OK)) as server:
        async with pool(get_dns_resolver=counting, keep_alive_timeout=0) as request:
            for _ in range(3):
                assert (await get(request, f'http://localhost:{server.port}/'))[2] == b'ok'
        assert len(server.peers) == 3
    assert asked == [('localhost', aiodnsresolver.TYPES.A)]
    resolve, _ = get_system_resolver(get_logger_adapter=None)
    loop = asyncio.get_running_loop()
    for address, record_type in (
            ('127.0.0.1', aiodnsresolver.TYPES.A), ('::1', aiodnsresolver.TYPES.AAAA)):
        [found] = await resolve(address, record_type, get_logger_adapter=None)
        assert (str(found), type(found).__bases__) == (
            address, (type(ipaddress.ip_address(address)),))
        assert 5 < found.expires_at - loop.time() <= 10
    with pytest.raises(aiodnsresolver.DnsRecordDoesNotExist):
        await resolve('127.0.0.1', aiodnsresolver.TYPES.AAAA, get_logger_adapter=None)


@on_loops
async def test_recipe_pinned_addresses():
    async with Server(Answering(OK)) as server:
        addresses = {'a.test': ['127.0.0.1'], 'b.test': ['::ffff:127.0.0.1'], 'c.test': []}
        async with pool(get_dns_resolver=recipe('pinned-addresses').pinned(addresses)) as request:
            for name in ('a.test', 'b.test'):
                assert (await get(request, f'http://{name}:{server.port}/'))[2] == b'ok'
            for name in ('c.test', 'd.test', 'localhost'):
                await failed(
                    get(request, f'http://{name}:{server.port}/'), HttpDnsError,
                    aiodnsresolver.DnsRecordDoesNotExist,
                    f'GET http://{name}:{server.port}: resolving {name} failed: '
                    'there is no such name (DnsRecordDoesNotExist)')
