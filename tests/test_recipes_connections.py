"""The recipes for connections, with servers and proxies that are scripted."""

import asyncio
import contextlib
import ipaddress

import aiodnsresolver
import pytest

from lowhaio import HttpConnectionError, HttpDnsError
from tests.harness import (
    OK,
    SCHEMES,
    Answering,
    Server,
    Streams,
    Unwanted,
    always,
    context_of,
    failed,
    get,
    on_loops,
    pool,
    recipe,
    row,
    through_unix_socket,
    trusting,
    turns,
    unix_streams,
    unwanted,
)


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
