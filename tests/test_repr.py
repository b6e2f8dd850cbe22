"""What a debugger shows of the objects of the module."""

import asyncio
import gc
import re
from ipaddress import IPv4Address

import pytest

import lowhaio
from lowhaio import Pool, buffered, repeatable, streamed
from tests.harness import (
    OK,
    SILENCE,
    UNFINISHED,
    Answering,
    NameFiles,
    ScriptedNameserver,
    Server,
    always,
    bound_to,
    certified,
    forever,
    get,
    holding,
    of_length,
    on_one_loop,
    pool,
    resolving,
    run_until,
    trusting,
    yielding,
)


def shown(type_name):
    """What the objects of a type that are alive now look like, those of other tests too."""
    return {repr(each) for each in gc.get_objects()
            if type(each).__module__ == 'lowhaio' and type(each).__name__ == type_name}


def test_a_body_in_memory_shows_its_length_and_not_its_content():
    assert repr(streamed(b'secret')) == '<streamed 6 bytes>'


@on_one_loop
async def test_a_repeatable_body_shows_what_it_calls_and_if_there_was_content():
    body = repeatable(yielding)
    assert repr(body) == f'<repeatable {yielding!r}>'
    chunks = body(b'', b'abc')
    assert repr(chunks) == '<WatchedChunks empty so far>'
    assert await buffered(chunks) == b'abc'
    assert repr(chunks) == '<WatchedChunks with content>'


@on_one_loop
async def test_what_a_pool_remembers_shows_how_much_it_is():
    async with Server(Answering(OK)) as server, pool() as request:
        await get(request, server.url, headers=((b'a', b'SECRET'), (b'B', b'')))
        assert '<Known: 1 URLs, 2 names of fields>' in shown('Known')


def test_the_settings_show_the_options_that_connections_follow():
    pool = Pool(http_version=b'HTTP/1.0', keep_alive_timeout=1.5, socket_timeout=7)
    settings = ('<Settings persists_unasked=False keep_alive_timeout=1.5 recv_bufsize=122880 '
                'max_header_length=16384 limits=<Limits connect=7 read=7 write=7 pool=1e+09> '
                'max_requests=inf>')
    assert settings in shown('Settings')
    del pool


@on_one_loop
async def test_what_a_pool_remembers_shows_how_much_that_is():
    async with Server(holding(b'HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n')) as server, \
            pool() as request:
        await request(b'GET', f'{server.url}remembered')
        assert f'<Origin {server.origin}>' in shown('Origin')
        assert '<Heads of 1 origins>' in shown('Heads')
        assert '<Head 200, 1 fields>' in shown('Head')
        assert '<Parsed 1 of at most 512>' in shown('Parsed')


@pytest.mark.parametrize('sent, decoder', [
    (b'content-length: 5\r\n\r\nab', '<LengthDecoder left=3>'),
    (b'content-length: 2\r\n\r\nab', '<LengthDecoder done>'),
    (b'transfer-encoding: chunked\r\n\r\n5\r\nab', '<ChunkedDecoder left=3>'),
    (b'\r\n', '<CloseDecoder left=inf>'),
])
@on_one_loop
async def test_a_decoder_shows_how_much_it_still_expects(sent, decoder):
    async with Server(holding(b'HTTP/1.1 200 OK\r\n' + sent)) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        assert decoder in shown(decoder[1:].partition(' ')[0])
        await body.aclose()


@on_one_loop
async def test_a_request_shows_what_it_has_declared_and_what_has_come_of_its_response():
    pieces = b'HTTP/1.1 102 Processing\r\n\r\n', b'HTTP/1.1 200 OK\r\n'
    async with Server(holding(*pieces)) as server, pool() as request:
        await run_until(
            request(b'PUT', server.url, headers=of_length(3), body=streamed(b'abc')),
            lambda: '<Declared length has_body>' in shown('Declared'))
        await run_until(
            request(b'GET', server.url),
            lambda: ('<HeadParser 17 bytes so far, after 1 interim responses>'
                     in shown('HeadParser')))


@on_one_loop
async def test_a_connection_shows_where_it_leads_its_state_and_how_many_requests_it_had():
    async with Server(holding(b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n')) as server, \
            pool() as request:
        where = f'{server.origin} (peer 127.0.0.1:{server.port})'
        _, _, body = await request(b'GET', server.url)
        assert f'<Connection {where} OPEN 1 requests>' in shown('Connection')
        assert f'<Endpoint {where}>' in shown('Endpoint')
        exchange = (f'<Exchange GET {where}, request 1: sent something, response body, '
                    'reading the response body>')
        assert exchange in shown('Exchange')
        assert repr(body) == f'<ReceivedBody arriving, {exchange}>'
        await body.aclose()
        assert repr(body) == f'<ReceivedBody failed, {exchange}>'
    async with Server(holding(b'HTTP/1.1 204 No Content\r\n\r\n')) as server, pool() as request:
        where = f'{server.origin} (peer 127.0.0.1:{server.port})'
        _, _, body = await request(b'GET', server.url)
        assert f'<Connection {where} IDLE 1 requests>' in shown('Connection')
        assert repr(body) == (
            f'<ReceivedBody arrived, <Exchange GET {where}, request 1: sent something, response, '
            'reading the response body>>')


@pytest.mark.parametrize('fields, state', [
    (of_length(3), '<RequestBody 2 bytes left>'),
    (((b'transfer-encoding', b'chunked'),), '<RequestBody chunked>'),
])
@on_one_loop
async def test_a_request_body_shows_how_much_of_it_is_left(fields, state):
    async def body():
        yield b'a'
        await asyncio.Event().wait()

    async with Server(holding(b'')) as server, pool() as request:
        where = f'{server.origin} (peer 127.0.0.1:{server.port})'
        exchange = (f'<Exchange PUT {where}, request 1: sent something, no response, the request '
                    'body>')
        await run_until(
            request(b'PUT', server.url, headers=fields, body=body),
            lambda: state in shown('RequestBody') and exchange in shown('Exchange'))


@on_one_loop
async def test_a_chunked_request_body_shows_what_must_come_next():
    async def body():
        yield b'5\r\nab'
        await asyncio.Event().wait()

    async with Server(holding(b'')) as server, pool() as request:
        await run_until(
            request(b'PUT', server.url, headers=((b'transfer-encoding', b'chunked'),), body=body),
            lambda: '<SentChunks 3 bytes before CRLF after the chunk>' in shown('SentChunks'))
    assert repr(lowhaio.CHUNK_END) == '<Expected CRLF after the chunk>'


@on_one_loop
async def test_a_tls_session_shows_how_often_it_was_resumed():
    async with (Server(holding(OK), certified('name.test')) as server,
                pool(get_ssl_context=trusting, get_dns_resolver=always('127.0.0.1')) as request):
        await request(b'GET', f'https://name.test:{server.port}/')
        after = 'inf' if lowhaio.SESSIONS_ARE_LOST else '0'
        assert (f'<TlsSession resumed 0 times, read after {after} more connections>'
                in shown('TlsSession'))


@on_one_loop
async def test_names_show_what_is_known_and_a_lookup_what_it_waits_for():
    async def resolve(host):
        if host == 'silent.test':
            await forever()
        return [IPv4Address('127.0.0.1')]

    def waits():
        return any(map(lookup.fullmatch, shown('Resolving')))

    lookup = re.compile(
        '<Resolving: <coroutine object Names.answer at .*>, waiting for <Future .*>')
    async with (Server(Answering(OK)) as server,
                pool(get_dns_resolver=resolving(resolve)) as request):
        await get(request, f'http://name.test:{server.port}/')
        assert '<Peers 127.0.0.1 until -inf, AAAA unknown, turn 1>' in shown('Peers')
        assert '<Connector with names>' in shown('Connector')
        coroutine = request(b'GET', 'http://silent.test/a/path')
        await run_until(coroutine, waits)
        assert '<Names: 1 known, 1 being asked for>' in shown('Names')
        assert '<Acquisition for GET http://silent.test:80>' in shown('Acquisition')
        coroutine.close()


@on_one_loop
async def test_a_lookup_shows_that_it_waits_for_a_turn_of_the_loop_or_is_over():
    def look():
        seen.append(repr(tasks[0]).rpartition(', ')[2])

    async def resolve(host):
        tasks.append(asyncio.current_task())
        look()
        asyncio.get_running_loop().call_soon(look)
        await asyncio.sleep(0)
        return [IPv4Address('127.0.0.1')]

    tasks, seen = [], []
    async with (Server(Answering(OK)) as server,
                pool(get_dns_resolver=resolving(resolve)) as request):
        await get(request, f'http://name.test:{server.port}/')
    look()
    assert seen == ['ready>', 'waiting for the next turn>', 'over>']


@on_one_loop
async def test_a_race_shows_what_has_failed_and_what_may_still_succeed():
    async def resolve(host):
        return [IPv4Address('127.0.0.1')]

    async def resolve_ipv6(host):
        await forever()

    [refusing] = bound_to('127.0.0.1')
    origin = f'http://name.test:{refusing.getsockname()[1]}'
    race = f'<Race for GET {origin}: AAAA records pending, 127.0.0.1 failed>'
    with refusing:
        async with pool(get_dns_resolver=resolving(resolve, resolve_ipv6)) as request:
            await run_until(request(b'GET', origin), lambda: race in shown('Race'))


@on_one_loop
async def test_the_books_of_a_pool_show_who_has_places_and_who_waits():
    async with Server(holding(UNFINISHED)) as server:
        request, close = Pool(max_connections=2)
        _, _, body = await request(b'GET', server.url)
        assert '<Books: 1 of 2 places, 0 idle, 0 waiting>' in shown('Books')
        _, _, other_body = await request(b'GET', server.url)
        waiting = f'<OriginBooks {server.origin}: 2 places, 0 idle, 1 waiting>'
        await run_until(request(b'GET', server.url), lambda: waiting in shown('OriginBooks'))
        await close()
        assert '<Books: 2 of 2 places, 0 idle, 0 waiting, the pool is closed>' in shown('Books')
        await body.aclose()
        await other_body.aclose()


@on_one_loop
async def test_the_resolver_shows_its_files_and_what_it_has_tried(tmp_path):
    async with ScriptedNameserver() as nameserver:
        nameserver.answers['name.test'] = SILENCE
        files = NameFiles(tmp_path, nameserver, '127.0.0.1 one.test two.test\n')
        async with pool(get_dns_resolver=files.get_dns_resolver) as request:
            coroutine = request(b'GET', 'http://name.test/')
            await run_until(coroutine, lambda: nameserver.queries)
            hosts = f'<HostsFile {files.hosts}: 2 names>'
            resolv_conf = f'<ResolvConf {files.resolv_conf}: 1 nameservers>'
            assert hosts in shown('HostsFile')
            assert resolv_conf in shown('ResolvConf')
            assert f'<LocalResolver with {hosts} and {resolv_conf}>' in shown('LocalResolver')
            assert '<Query for name.test: 127.0.0.1 in 0.5 s>' in shown('Query')
            assert '<Lookup of name.test: 1 being asked, 0 answered, 0 failed>' in shown('Lookup')
            coroutine.close()
