"""The contract: what lowhaio promises, one test for each promise, in the order of the docs.

Read it from the top to learn what lowhaio does. The servers are real, and scripted in bytes:
`Server(Answering(OK))` answers each request with `OK`, and keeps what it was asked. Each test runs
on asyncio's loop and on uvloop; on those of `on_clock`, time passes only when the test lets it.
Afterwards no descriptor may be left, and no error in the loop.

The directory tests/ has the rest by area: all that may come, in whatever pieces, and go wrong.
"""

import asyncio
import contextlib
import functools
import gc
import inspect
import ipaddress
import logging
import socket
import ssl
import sys
import threading

import aiodnsresolver
import pytest

from lowhaio import (
    HttpConnectionClosedError,
    HttpConnectionError,
    HttpDataError,
    HttpDnsError,
    HttpError,
    HttpHeaderTooLong,
    HttpTlsError,
    Phase,
    Pool,
    buffered,
    empty_async_iterator,
    repeatable,
    streamed,
    timeout,
)
from tests.harness import (
    AS_CHUNKS,
    LOOPS,
    OK,
    PATIENCE,
    REFUSED,
    SCHEMES,
    Answering,
    AnsweringInThreads,
    Nameserver,
    Server,
    ServerAt,
    ThreadServer,
    always,
    asking,
    bound_to,
    certified,
    context_of,
    default_of,
    ends_after,
    failure,
    forever,
    full_backlog,
    get,
    holding,
    no_address,
    of_length,
    on_clock,
    on_loops,
    measured,
    passing,
    pool,
    receive_end,
    receive_head,
    resolving,
    run_script,
    small_sock,
    trusting,
    turns,
    until,
    yielding,
)

# -------------------------------------------------------------------- a request and its response


@on_loops
async def test_a_request_returns_the_code_the_headers_and_the_body():
    response = b'HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\nhello'
    async with Server(Answering(response)) as server:
        request, close = Pool()
        code, headers, body = await request(b'GET', server.url)
        assert code == b'200'
        assert headers == ((b'content-type', b'text/plain'), (b'content-length', b'5'))
        assert [chunk async for chunk in body] == [b'hello']
        await close()


@on_loops
@pytest.mark.parametrize('code', [b'302', b'404', b'500'])
async def test_a_code_is_returned_and_never_raised(code):
    response = b'HTTP/1.1 %b Whatever\r\ncontent-length: 0\r\n\r\n' % code
    async with Server(Answering(response)) as server, pool() as request:
        assert (await get(request, server.url))[0] == code


@on_loops
async def test_a_request_returns_when_the_head_has_come_before_the_body_has():
    unfinished = b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n'
    async with Server(holding(unfinished)) as server, pool() as request:
        code, headers, body = await request(b'GET', server.url)
        assert code == b'200'


@on_loops
async def test_no_task_is_made():
    def refuse(loop, coroutine, **kwargs):
        raise AssertionError(f'a task for {coroutine}')

    answering = Answering(OK)
    async with (Server(answering, certified('name.test')) as server,
                pool(get_ssl_context=trusting, get_dns_resolver=always('127.0.0.1')) as request):
        url = f'https://name.test:{server.port}/'
        # The server has a task for each connection: they are made before the requests are.
        await get(request, url)
        loop = asyncio.get_running_loop()
        loop.set_task_factory(refuse)
        await request(b'POST', url, headers=of_length(2), body=streamed(b'hi'))
        await get(request, url)
        loop.set_task_factory(None)
    assert answering.connections == [0, 0, 0]


# ---------------------------------------------------------------------------- requests: the method

async def sent(method=b'GET', path='', **arguments):
    """What the server is asked: the request line and the fields, but for `host`."""
    answering = Answering(OK)
    async with Server(answering) as server, pool() as request:
        await request(method, server.url + path, **arguments)
    request_line, host, *fields = answering.heads[0].removesuffix(b'\r\n\r\n').split(b'\r\n')
    assert host == b'host: 127.0.0.1:%d' % server.port
    return request_line, fields


def message_of(error):
    """What is said after method, origin and peer."""
    return str(error).partition('), ')[2]


async def refusal(method=b'GET', url='http://example.com/path', **arguments):
    """The error of a request that is refused before its host is looked up."""
    options = {'get_dns_resolver': always('a lookup would fail'), 'get_sock': None}
    async with pool(**options) as request:
        error = await failure(request(method, url, **arguments))
    assert type(error) is HttpConnectionError
    assert error.phase == 'refused'
    assert isinstance(error.__cause__, ValueError | TypeError)
    return str(error)


@on_loops
@pytest.mark.parametrize('method', [b'GET', b'PROPFIND', b'get', b"a!#$%&'*+-.^_`|~9"])
async def test_the_method_is_sent_as_it_is(method):
    request_line, _ = await sent(method)
    assert request_line == method + b' / HTTP/1.1'


@on_loops
async def test_a_method_that_is_no_token_is_refused():
    assert await refusal(b'GET /') == (
        "b'GET /' http://example.com:80, refused: method must be a token, got b'GET /'")


@on_loops
async def test_connect_is_refused():
    assert await refusal(b'CONNECT') == (
        'CONNECT http://example.com:80, refused: method must not be CONNECT: tunnels are not '
        'supported')


# ------------------------------------------------------------------------------- requests: the URL

@on_loops
async def test_the_path_and_the_query_are_sent_as_they_are():
    request_line, _ = await sent(path="a%2Fb/../c//d;e=f,g?x=1&x=2+3%20&y=/?:@!$'()*")
    assert request_line == b"GET /a%2Fb/../c//d;e=f,g?x=1&x=2+3%20&y=/?:@!$'()* HTTP/1.1"


@on_loops
async def test_only_what_may_not_stand_in_a_url_is_percent_encoded():
    request_line, _ = await sent(path='a b/é<>"\\^`{|}[]/100%?é=%')
    assert request_line == (
        b'GET /a%20b/%C3%A9%3C%3E%22%5C%5E%60%7B%7C%7D%5B%5D/100%25?%C3%A9=%25 HTTP/1.1')


@on_loops
async def test_a_fragment_is_not_sent():
    request_line, _ = await sent(path='page?a=b#part')
    assert request_line == b'GET /page?a=b HTTP/1.1'


@on_loops
async def test_a_url_without_a_path_asks_for_the_root():
    answering = Answering(OK)
    async with Server(answering) as server, pool() as request:
        await request(b'GET', server.origin)
        await request(b'GET', server.origin + '?a=b')
    assert [head.split()[1] for head in answering.heads] == [b'/', b'/?a=b']


@on_loops
@pytest.mark.parametrize('url, reason', [
    ('ftp://example.com/', "have the scheme http or https, got 'ftp'"),
    ('/path', "start with http:// or https:// and a host, got ''"),
    ('http://user:password@example.com/', 'not have userinfo (user:password@): use a header'),
    ('http://example.com:99999/', "have a port from 1 to 65535, got '99999'"),
    ('http://example.com/a\nb',
     "not contain control characters, got '\\n' at index 20"),
    ('http://256.1.1.1/',
     'have as host an IPv4 address, an IPv6 address in brackets, or a name of letters, digits, '
     """"-", "_" and ".", got '256.1.1.1'"""),
], ids=['scheme', 'no host', 'credentials', 'port', 'control character', 'host'])
async def test_a_url_that_can_not_be_requested_is_refused(url, reason):
    assert await refusal(url=url) == 'GET, refused: url must ' + reason


@on_loops
async def test_a_host_has_one_form_for_the_resolver_the_host_field_and_reuse():
    asked = []

    async def resolve(host):
        asked.append(host)
        return [ipaddress.ip_address('127.0.0.1')]

    answering = Answering(OK)
    async with Server(answering) as server, pool(get_dns_resolver=resolving(resolve)) as request:
        for host in ('bücher.test', 'BÜCHER.test.', 'xn--bcher-kva.TEST'):
            await get(request, f'http://{host}:{server.port}/')
    field = b'\r\nhost: xn--bcher-kva.test:%d\r\n' % server.port
    assert set(asked) == {'xn--bcher-kva.test'}
    assert all(field in head for head in answering.heads)
    assert answering.connections == [0, 0, 0]


@on_loops
async def test_a_name_that_idna_2003_takes_for_another_is_refused_without_the_package_idna(
        monkeypatch):
    monkeypatch.setitem(sys.modules, 'idna', None)
    assert await refusal(url='http://faß.test/') == (
        'GET, refused: url must have as host a name that IDNA 2003 does not take for another one, '
        "got 'faß.test': write 'xn--fa-hia.test', or install the package idna")


# ---------------------------------------------------------------------------- requests: the params

@on_loops
async def test_params_are_added_to_the_query():
    request_line, _ = await sent(path='?a=b', params=(('c', 'd e'), ('c', 'é&')))
    assert request_line == b'GET /?a=b&c=d+e&c=%C3%A9%26 HTTP/1.1'


@on_loops
async def test_params_may_be_a_dictionary_with_lists():
    request_line, _ = await sent(params={'a': ['b', 'c'], 'd': 1})
    assert request_line == b'GET /?a=b&a=c&d=1 HTTP/1.1'


@on_loops
async def test_params_of_bytes_are_refused_since_they_are_most_likely_headers():
    assert await refusal(params=((b'accept', b'*/*'),)) == (
        'GET http://example.com:80, refused: params must be pairs of str, got pairs of bytes: '
        'were they headers?')


# --------------------------------------------------------------------------- requests: the headers

@on_loops
async def test_fields_are_sent_in_their_order_and_case_and_repeated():
    _, fields = await sent(headers=((b'X-b', b'1'), (b'accept', b'*/*'), (b'X-B', b'2')))
    assert fields == [b'X-b: 1', b'accept: */*', b'X-B: 2']


@on_loops
async def test_nothing_but_host_is_added():
    _, fields = await sent()
    assert fields == []


@on_loops
async def test_host_may_be_given():
    answering = Answering(OK)
    async with Server(answering) as server, pool() as request:
        await request(b'GET', server.url, headers=((b'a', b'b'), (b'Host', b'example.com')))
    assert answering.heads == [b'GET / HTTP/1.1\r\na: b\r\nHost: example.com\r\n\r\n']


@on_loops
@pytest.mark.parametrize('field, reason', [
    ((b'a', b'b\r\nc: d'), "not have control characters but HTAB in a value: see that of b'a'"),
    ((b'a b', b'c'), "have tokens as names, got b'a b'"),
    (('a', 'b'), 'be pairs of name and value, both bytes, got (str, str)'),
    ((b'host', b'a/b'), 'have as host a name, an IPv4 address or an IPv6 address in brackets, '
                        'and a port of digits if any'),
    ((b'transfer-encoding', b'gzip'),
     "have chunked as the last transfer-encoding, got b'gzip'"),
], ids=['line break', 'name', 'str', 'host', 'coding'])
async def test_a_field_that_would_not_be_valid_is_refused(field, reason):
    assert await refusal(headers=(field,)) == (
        'GET http://example.com:80, refused: headers must ' + reason)


@on_loops
async def test_an_error_never_shows_path_query_or_field_values():
    for arguments in ({'headers': ((b'authorization', b'SECRET\n'),)},
                      {'url': 'http://example.com/SECRET?SECRET', 'method': b' '}):
        assert 'SECRET' not in await refusal(**arguments)


# ------------------------------------------------------------------------------ requests: the body

async def put(server, request, body, length=None, **arguments):
    headers = AS_CHUNKS if length is None else of_length(length)
    return await request(b'PUT', server.url, headers=headers, body=body, **arguments)


@on_loops
async def test_a_body_is_a_function_that_is_called_with_its_arguments():
    async def numbers(start, end):
        for number in range(start, end):
            yield b'%d' % number

    answering = Answering(OK)
    async with Server(answering) as server, pool() as request:
        await request(b'PUT', server.url, headers=((b'content-length', b'3'),),
                      body=numbers, body_args=(1,), body_kwargs={'end': 4})
    assert answering.bodies == [b'123']


@on_loops
async def test_streamed_is_a_body_that_is_in_memory():
    answering = Answering(OK)
    body = streamed(b'hello')
    async with Server(answering) as server, pool() as request:
        await put(server, request, body, length=5)
    assert answering.bodies == [b'hello']
    assert body.data == b'hello'


@on_loops
async def test_a_body_is_not_called_when_there_is_no_connection():
    def body():
        raise AssertionError

    [sock] = bound_to('127.0.0.1')
    with sock:
        async with pool() as request:
            error = await failure(request(
                b'PUT', f'http://127.0.0.1:{sock.getsockname()[1]}/', headers=of_length(1),
                body=body))
    assert isinstance(error.__cause__, ConnectionRefusedError)


@on_loops
async def test_the_next_chunk_is_asked_for_when_the_last_one_has_been_sent():
    asked = []

    async def body():
        for number in range(1000):
            asked.append(number)
            yield bytes(10_000)

    async def script(peer):
        peer.writer.transport.pause_reading()
        await until(lambda: asked)
        await turns(100)
        asked_of_a_server_that_does_not_read.append(len(asked))
        peer.writer.transport.resume_reading()
        await peer.read_head()
        await peer.read(10_000_000)
        await peer.send(OK)

    asked_of_a_server_that_does_not_read = []
    async with Server(script) as server, pool(get_sock=small_sock) as request:
        code, _, _ = await put(server, request, body, length=10_000_000)
    assert code == b'200'
    assert asked_of_a_server_that_does_not_read[0] < 500


@on_loops
async def test_the_head_leaves_together_with_a_first_chunk_that_is_there():
    # Of a datagram socket one read returns what one send sent.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    async def get_connection(scheme, host, port):
        return ours

    async def serve():
        arrived.append(await loop.sock_recv(theirs, 2 ** 16))
        await loop.sock_sendall(theirs, OK)

    arrived = []
    loop = asyncio.get_running_loop()
    theirs.setblocking(False)
    with theirs:
        async with pool(get_connection=get_connection) as request:
            await asyncio.gather(serve(), request(
                b'PUT', 'http://name.test/', headers=of_length(5), body=streamed(b'hello')))
    assert arrived == [b'PUT / HTTP/1.1\r\nhost: name.test\r\ncontent-length: 5\r\n\r\nhello']


@on_loops
async def test_the_head_does_not_wait_for_a_first_chunk_that_is_not_there():
    head_has_come = asyncio.Event()

    async def body():
        await head_has_come.wait()
        yield b'hello'

    async def script(peer):
        await peer.read_head()
        head_has_come.set()
        assert await peer.read(5) == b'hello'
        await peer.send(OK)

    async with Server(script) as server, pool() as request:
        assert (await put(server, request, body, length=5))[0] == b'200'


@on_loops
async def test_empty_chunks_are_skipped():
    chunks = b'2\r\nok\r\n', b'', b'0\r\n\r\n'

    async def script(peer):
        await peer.read_head()
        assert await peer.read(12) == b'2\r\nok\r\n0\r\n\r\n'
        await peer.send(OK)

    async with Server(script) as server, pool() as request:
        await put(server, request, yielding, body_args=chunks)


@on_loops
@pytest.mark.parametrize('headers, reason', [
    ((*of_length(2), *of_length(2)), 'have at most one content-length'),
    ((*of_length(2), *AS_CHUNKS), 'not have content-length and transfer-encoding together'),
    (((b'content-length', b'+2'),), "have 1 to 20 digits as content-length, got b'+2'"),
], ids=['two', 'both', 'no number'])
async def test_the_length_of_a_body_must_be_told_in_one_way(headers, reason):
    assert await refusal(b'PUT', headers=headers, body=streamed(b'ok')) == (
        'PUT http://example.com:80, refused: headers must ' + reason)


@on_loops
async def test_a_body_whose_length_was_not_told_is_an_error_before_a_byte_is_sent():
    async with Server(Answering(OK)) as server, pool() as request:
        error = await failure(request(b'PUT', server.url, body=streamed(b'ok')))
    assert type(error) is HttpConnectionError
    assert message_of(error) == (
        'the request body: the body yielded bytes, but headers has no content-length or '
        'transfer-encoding')


@on_loops
async def test_a_body_that_is_longer_than_declared_is_an_error_and_its_excess_is_not_sent():
    async def script(peer):
        received.append(await peer.closed())

    received = []
    async with Server(script) as server, pool() as request:
        error = await failure(put(
            server, request, yielding, length=3, body_args=(b'ab', b'cd')))
        await until(lambda: received)
    assert type(error) is HttpDataError
    assert message_of(error) == (
        'the request body: the body yielded more than its content-length of 3')
    assert received[0].endswith(b'\r\n\r\nab')


@on_loops
async def test_a_body_that_is_shorter_than_declared_is_an_error():
    async with Server(holding(OK)) as server, pool() as request:
        error = await failure(put(server, request, streamed(b'ab'), length=3))
    assert type(error) is HttpDataError
    assert message_of(error) == (
        'the request body: the body ended 1 bytes short of its content-length of 3')


@on_loops
async def test_a_chunked_body_is_sent_as_the_caller_has_encoded_it():
    content = b'5;a=b\r\nhello\r\n0\r\nx: y\r\n\r\n'

    async def script(peer):
        await peer.read_head()
        assert await peer.read(len(content)) == content
        await peer.send(OK)

    async with Server(script) as server, pool() as request:
        assert (await put(server, request, streamed(content)))[0] == b'200'


@on_loops
async def test_a_chunked_body_that_is_not_encoded_so_is_an_error_before_it_is_sent():
    smuggled = b'0\r\n\r\nGET /admin HTTP/1.1\r\n\r\n'
    async with Server(Answering(OK)) as server, pool() as request:
        error = await failure(put(server, request, streamed(smuggled)))
    assert type(error) is HttpConnectionError
    assert message_of(error) == (
        'the request body: the body must be encoded as transfer-encoding chunked says: expected '
        'nothing after the last chunk, but it yielded something else')


def test_repeatable_refuses_a_body_that_can_be_sent_only_once():
    chunks = yielding(b'ok')
    body = repeatable(lambda: chunks)
    body()
    with pytest.raises(ValueError, match='^body must return a new async iterator at each call, '
                                         'got that of an earlier call$'):
        body()


# --------------------------------------------------------------------------- streaming both ways

@on_loops
async def test_a_response_of_300_or_above_ends_the_sending_and_is_returned():
    closed = []

    async def body():
        try:
            yield b'some'
            await forever()
        finally:
            closed.append('its finally has run')

    async def script(peer):
        await peer.read_head()
        await peer.send(b'HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\n\r\nno')
        await peer.closed()

    async with Server(script) as server, pool() as request:
        code, _, response_body = await put(server, request, body, length=1000)
        assert code == b'413'
        assert closed == ['its finally has run']
        assert response_body.request_sent is False
        assert await buffered(response_body) == b'no'
        await get(request, server.url)
        assert len(server.peers) == 2  # the connection was not used again


@on_loops
async def test_below_300_the_sending_goes_on_while_the_response_is_read():
    has_answered = asyncio.Event()

    async def body():
        yield b'some'
        await has_answered.wait()
        yield b'more'

    async def script(peer):
        await peer.read_head()
        await peer.send(OK)
        has_answered.set()
        assert await peer.read(8) == b'somemore'
        await peer.closed()

    async with Server(script) as server, pool() as request:
        code, _, response_body = await put(server, request, body, length=8)
        assert code == b'200'
        assert response_body.request_sent is False
        # Who does not read does not send.
        assert await buffered(response_body) == b'ok'
        assert response_body.request_sent is True


@on_loops
async def test_below_300_a_body_may_wait_for_what_comes_back():
    echoes = asyncio.Queue()

    async def body():
        for chunk in b'one', b'two', b'end':
            yield chunk
            assert await echoes.get() == chunk

    async def script(peer):
        await peer.read_head()
        await peer.send(b'HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n')
        for _ in range(3):
            await peer.send(await peer.read(3))
        await peer.closed()

    async with Server(script) as server, pool() as request:
        _, _, response_body = await put(server, request, body, length=9)
        received = []
        async for chunk in response_body:
            received.append(chunk)
            echoes.put_nowait(chunk)
    assert received == [b'one', b'two', b'end']


@on_loops
async def test_below_300_who_does_not_read_does_not_send_and_who_reads_does_so_in_its_own_task():
    tasks = []
    has_answered = asyncio.Event()

    async def body():
        yield b'some'
        await has_answered.wait()
        tasks.append(asyncio.current_task())
        yield b'more'

    async def script(peer):
        await peer.read_head()
        await peer.send(OK)
        assert await peer.read(8) == b'somemore'
        await peer.closed()

    async with Server(script) as server, pool() as request:
        _, _, response_body = await put(server, request, body, length=8)
        has_answered.set()
        await turns(50)
        assert tasks == []
        before = asyncio.all_tasks()
        reader = asyncio.create_task(buffered(response_body))
        assert await reader == b'ok'
        assert tasks == [reader]
        assert asyncio.all_tasks() == before


@on_loops
async def test_below_300_closing_the_response_ends_the_sending():
    events = []

    async def body():
        try:
            yield b'some'
            await forever()
        finally:
            await asyncio.sleep(0)
            events.append('cleaned up')

    async def script(peer):
        await peer.read_head()
        await peer.send(OK)
        events.append(await peer.closed())

    async with Server(script) as server, pool(max_connections=1) as request:
        _, _, response_body = await put(server, request, body, length=8)
        await response_body.aclose()
        assert events == ['cleaned up']
        assert response_body.request_sent is False
        await until(lambda: events == ['cleaned up', b'some'])


@on_loops
async def test_below_300_a_response_that_is_dropped_ends_the_sending():
    events = []

    async def body():
        try:
            yield b'some'
            await forever()
        finally:
            events.append('its finally has run')

    async def script(peer):
        await peer.read_head()
        await peer.send(OK)
        events.append(await peer.closed())

    async with Server(script) as server, pool() as request:
        await put(server, request, body, length=8)
        gc.collect()
        assert events == ['its finally has run']
        await until(lambda: events == ['its finally has run', b'some'])


@on_loops
async def test_below_300_a_connection_is_used_again_if_both_halves_have_ended_well():
    async def body():
        yield b'some'
        await has_answered.wait()
        yield b'more'

    async def script(peer):
        while True:
            head = await peer.read_head()
            await peer.send(OK)
            if head.startswith(b'PUT'):
                await peer.read(8)

    async with Server(script) as server, pool() as request:
        for is_read in True, False:
            has_answered = asyncio.Event()
            _, _, response_body = await put(server, request, body, length=8)
            has_answered.set()
            if is_read:
                await buffered(response_body)
            del response_body
            await get(request, server.url)
            assert len(server.peers) == (1 if is_read else 2)


@on_loops
async def test_below_300_a_request_that_can_not_be_sent_whole_is_an_error():
    async def body():
        yield b'some'
        raise LookupError('there is no more')

    async def script(peer):
        await peer.read_head()
        await peer.send(OK)
        await peer.closed()

    async with Server(script) as server, pool() as request:
        error = await failure(put(server, request, body, length=8))
    assert type(error) is HttpDataError
    assert isinstance(error.__cause__, LookupError)


@on_loops
async def test_below_300_a_whole_last_response_ends_the_sending_with_its_connection():
    async def body():
        yield b'some'
        await forever()

    async def script(peer):
        await peer.read_head()
        await peer.send(b'HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok')

    async with Server(script) as server, pool() as request:
        code, _, response_body = await put(server, request, body, length=8)
        assert (code, await buffered(response_body)) == (b'200', b'ok')
        assert response_body.request_sent is False


@on_loops
async def test_what_the_server_said_before_the_sending_failed_is_returned():
    is_asked, has_gone = threading.Event(), threading.Event()

    def script(sock):
        sock.recv(2 ** 16)
        is_asked.wait(PATIENCE)
        sock.sendall(b'HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno')
        sock.close()
        has_gone.set()

    async def body():
        yield b'a'
        await asyncio.sleep(0)  # so that it leaves
        is_asked.set()
        has_gone.wait(PATIENCE)  # the loop waits, too: what has come is seen when sending fails
        while True:
            yield b'b'

    with ThreadServer(script) as server:
        async with pool() as request:
            code, _, response_body = await put(server, request, body, length=10 ** 6)
            assert (code, await buffered(response_body)) == (b'403', b'no')


@on_loops
async def test_with_expect_the_body_is_sent_after_100_continue():
    events = []

    async def body():
        events.append('called')
        yield b'ok'

    async def script(peer):
        await peer.read_head()
        await turns(20)
        events.append('100 Continue')
        await peer.send(b'HTTP/1.1 100 Continue\r\n\r\n')
        assert await peer.read(2) == b'ok'
        await peer.send(OK)

    async with Server(script) as server, pool() as request:
        await request(b'PUT', server.url, body=body,
                      headers=((b'expect', b'100-continue'), (b'content-length', b'2')))
    assert events == ['100 Continue', 'called']


@on_loops
async def test_with_expect_the_body_is_not_called_if_another_response_comes_first():
    def body():
        raise AssertionError

    response = b'HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n\r\n'
    async with Server(holding(response)) as server, pool() as request:
        code, _, _ = await request(b'PUT', server.url, body=body, headers=(
            (b'expect', b'100-continue'), (b'content-length', b'2')))
    assert code == b'417'


@on_clock
async def test_with_expect_the_body_waits_for_100_continue_no_longer_than_a_second():
    head_has_come = asyncio.Event()

    async def script(peer):
        await peer.read_head()
        head_has_come.set()
        assert await peer.read(2) == b'ok'
        await peer.send(OK)

    async with Server(script) as server, pool() as request:
        answered = request(b'PUT', server.url, body=streamed(b'ok'), headers=(
            (b'expect', b'100-continue'), (b'content-length', b'2')))
        code, _, _ = await (await ends_after(1, answered, head_has_come.is_set))
    assert code == b'200'


# -------------------------------------------------------------------------- responses: the headers

async def received(response, method=b'GET', **arguments):
    """The headers and the content of a response, and the body that has ended."""
    async with Server(Answering(response, close_after=True)) as server, pool() as request:
        _, headers, body = await request(method, server.url, **arguments)
        return headers, await buffered(body), body


async def malformed(response):
    """What is said of a response that does not follow RFC 9112."""
    async with Server(Answering(response, close_after=True)) as server, pool() as request:
        error = await failure(get(request, server.url))
    assert type(error) is HttpDataError
    return message_of(error)


@on_loops
async def test_the_headers_are_in_the_order_of_the_wire_in_lower_case_and_repeated():
    headers, _, _ = await received(
        b'HTTP/1.1 200 OK\r\nSet-Cookie:a=b\r\nX:  y  \r\nset-cookie:\tc=d\r\n'
        b'content-length: 0\r\n\r\n')
    assert headers == ((b'set-cookie', b'a=b'), (b'x', b'y'), (b'set-cookie', b'c=d'),
                       (b'content-length', b'0'))


@on_loops
@pytest.mark.parametrize('response', [
    b'HTTP/1.1 200 OK\na: b\ncontent-length: 2\n\nok',
    b'HTTP/1.1 200\r\na: b\r\ncontent-length: 2\r\n\r\nok',
    b'HTTP/1.9 200 OK\r\na: b\r\ncontent-length: 2\r\n\r\nok',
], ids=['line feeds alone', 'no reason', 'a higher minor version'])
async def test_what_servers_get_wrong_without_harm_is_accepted(response):
    headers, content, _ = await received(response)
    assert headers == ((b'a', b'b'), (b'content-length', b'2'))
    assert content == b'ok'


@on_loops
async def test_a_folded_line_is_joined():
    headers, _, _ = await received(b'HTTP/1.1 200 OK\r\na: b\r\n  c\r\ncontent-length: 0\r\n\r\n')
    assert headers[0] == (b'a', b'b c')


@on_loops
@pytest.mark.parametrize('response, message', [
    (b'HTTP/2 200 OK\r\n\r\n',
     'head: bad status line: expected HTTP/1.x, a space, three digits and a reason, '
     "got b'HTTP/2 200 OK\\r'"),
    (b'HTTP/1.1 200 OK\r\nno colon\r\n\r\n',
     """head: bad field line: expected a token, ":" and a value, got b'no colon\\r'"""),
    (b'HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n',
     "head: bad content-length: expected 1 to 20 digits, got b'-1'"),
    (b'HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n',
     "head: bad content-length: expected one, got 1 and b'2'"),
    (b'HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n',
     "head: bad transfer-encoding: expected chunked, got b'gzip'"),
    (b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n+1\r\na\r\n0\r\n\r\n',
     'body: bad chunk-size line: expected 1 to 16 hex digits, an optional extension and CRLF, '
     "got b'+1\\r\\n'"),
], ids=['version', 'field', 'length', 'two lengths', 'coding', 'chunk'])
async def test_what_does_not_follow_rfc_9112_is_an_error(response, message):
    assert await malformed(response) == 'reading the response ' + message


@on_loops
async def test_interim_responses_are_skipped():
    headers, content, _ = await received(
        b'HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n' + OK)
    assert (headers, content) == (((b'content-length', b'2'),), b'ok')


@on_loops
async def test_101_is_returned_to_a_request_with_upgrade_and_its_body_is_all_that_follows():
    switching = b'HTTP/1.1 101 Switching Protocols\r\nupgrade: chat\r\n\r\nHello, over chat'
    async with Server(Answering(switching, close_after=True)) as server, pool() as request:
        code, _, body = await request(b'GET', server.url, headers=(
            (b'connection', b'upgrade'), (b'upgrade', b'chat')))
        assert (code, await buffered(body)) == (b'101', b'Hello, over chat')
    assert await malformed(switching) == (
        'reading the response head: got 101 Switching Protocols, but the request had no upgrade')


@contextlib.asynccontextmanager
async def switched(script, first=b''):
    """A response of 101 whose peer runs the script."""
    async def serve(peer):
        await peer.read_head()
        await peer.send(b'HTTP/1.1 101 Switching Protocols\r\nupgrade: chat\r\n\r\n' + first)
        await script(peer)

    get_sock = functools.partial(small_sock, size=2 ** 16)
    async with Server(serve) as server, pool(get_sock=get_sock) as request:
        _, _, body = await request(b'GET', server.url, headers=(
            (b'connection', b'upgrade'), (b'upgrade', b'chat')))
        yield body


async def echo(peer):
    while data := await peer.reader.read(65536):
        await peer.send(data)


async def deaf(peer):
    peer.writer.transport.pause_reading()
    await forever()


@on_loops
async def test_after_101_both_sides_send_as_they_like():
    async with switched(echo, first=b'Hello, over chat') as body:
        assert await anext(body) == b'Hello, over chat'
        await body.send(b'Hello')
        assert await anext(body) == b'Hello'
        await body.send(b'again')
        assert await anext(body) == b'again'


@on_loops
async def test_after_101_one_task_may_read_while_another_sends():
    async def send():
        for _ in range(50):
            await body.send(bytes(100_000))
        sent.append('all')

    sent = []
    async with switched(echo) as body:
        sender = asyncio.create_task(send())
        await turns(50)
        assert sent == []  # it waits, since the echo is not taken
        length = 0
        while length < 5_000_000:
            length += len(await anext(body))
        await sender


@on_clock
async def test_after_101_a_reading_has_no_time_limit_and_a_send_has_socket_timeout():
    async with switched(deaf) as body:
        reader = asyncio.ensure_future(anext(body))
        await passing(3600)
        assert not reader.done()
        sender = asyncio.ensure_future(body.send(bytes(10_000_000)))
        await passing(600)
        for failing in reader, sender:
            error = await failure(failing)
            assert type(error) is HttpDataError
            assert isinstance(error.__cause__, TimeoutError)


@on_loops
async def test_after_101_a_cancelled_reading_has_taken_nothing_and_a_cancelled_send_closes():
    async with switched(echo) as body:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await anext(body)
        await body.send(b'Hello')
        assert await anext(body) == b'Hello'
    async with switched(deaf) as body:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await body.send(bytes(10_000_000))
        assert type(await failure(anext(body))) is HttpDataError


@on_loops
async def test_after_101_the_end_of_the_peer_ends_the_iteration_and_then_send_raises():
    async def script(peer):
        await peer.send(b'bye')

    async with switched(script) as body:
        assert [chunk async for chunk in body] == [b'bye']
        assert type(await failure(body.send(b'Hello'))) is HttpConnectionClosedError


@on_loops
async def test_after_101_closing_ends_whoever_reads_or_sends():
    async with switched(deaf) as body:
        reader = asyncio.ensure_future(anext(body))
        sender = asyncio.ensure_future(body.send(bytes(10_000_000)))
        await turns(5)
        await body.aclose()
        for failing in reader, sender:
            assert isinstance((await failure(failing)).__cause__, ConnectionAbortedError)


@on_loops
async def test_after_101_two_who_read_or_send_at_once_are_refused_without_harm():
    async def script(peer):
        peer.writer.transport.pause_reading()
        await go_on.wait()
        peer.writer.transport.resume_reading()
        await peer.send(b'%d' % len(await peer.read(10_000_000)))

    go_on = asyncio.Event()
    async with switched(script) as body:
        reader = asyncio.ensure_future(anext(body))
        sender = asyncio.ensure_future(body.send(bytes(10_000_000)))
        await turns(5)
        for second in anext(body), body.send(b'Hello'):
            error = await failure(second)
            assert type(error) is HttpDataError
            assert isinstance(error.__cause__, RuntimeError)
        go_on.set()
        await sender
        assert await reader == b'10000000'


@on_loops
async def test_send_is_only_for_a_response_of_101():
    async with Server(Answering(OK)) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        error = await failure(body.send(b'Hello'))
        assert type(error) is HttpDataError
        assert str(error).endswith('only after 101 Switching Protocols can more be sent')
        assert await buffered(body) == b'ok'


# ----------------------------------------------------------------------------- responses: the body

@on_loops
async def test_the_chunks_of_a_body_are_as_they_arrive():
    has_been_read = asyncio.Event()

    async def script(peer):
        await peer.read_head()
        await peer.send(b'HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n', b'ab')
        await has_been_read.wait()
        await peer.send(b'cd')

    async with Server(script) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        assert await anext(body) == b'ab'
        has_been_read.set()
        assert [chunk async for chunk in body] == [b'cd']


@on_loops
async def test_a_chunk_has_at_most_recv_bufsize_bytes():
    response = b'HTTP/1.1 200 OK\r\ncontent-length: 10000\r\n\r\n' + bytes(10_000)
    async with Server(Answering(response)) as server, pool(recv_bufsize=1000) as request:
        _, _, body = await request(b'GET', server.url)
        lengths = [len(chunk) async for chunk in body]
    assert sum(lengths) == 10_000
    assert max(lengths) <= 1000


@on_loops
async def test_nothing_is_read_ahead_of_who_reads_the_body():
    sent = []

    async def script(peer):
        await peer.read_head()
        peer.writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n')
        for number in range(1000):
            sent.append(number)
            await peer.send(bytes(100_000))

    async with Server(script) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        await turns(1000)
        assert len(sent) < 500
        await body.aclose()


@on_loops
async def test_chunked_transfer_encoding_is_decoded_and_trailers_follow_the_body():
    _, content, body = await received(
        b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n'
        b'3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nDigest: 1\r\n\r\n')
    assert content == b'abcde'
    assert body.trailers == ((b'digest', b'1'),)


@on_loops
async def test_content_encoding_is_not_decoded():
    _, content, _ = await received(
        b'HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\n\x1f\x8b\x08\x00')
    assert content == b'\x1f\x8b\x08\x00'


@on_loops
async def test_a_body_without_a_length_ends_with_the_connection():
    _, content, _ = await received(b'HTTP/1.1 200 OK\r\n\r\nall of it')
    assert content == b'all of it'


@on_loops
async def test_what_has_no_content_has_an_empty_body():
    for method, response in ((b'HEAD', b'HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n'),
                             (b'GET', b'HTTP/1.1 204 No Content\r\n\r\n'),
                             (b'GET', b'HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n')):
        _, content, _ = await received(response, method)
        assert content == b''


@on_loops
@pytest.mark.parametrize('response', [
    b'HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhell',
    b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n',
], ids=['content-length', 'chunked'])
async def test_a_body_that_was_cut_short_is_never_taken_for_a_whole_one(response):
    async with Server(Answering(response, close_after=True)) as server, pool() as request:
        error = await failure(get(request, server.url))
    assert type(error) is HttpConnectionClosedError
    assert error.response_started


@on_loops
async def test_a_body_can_be_read_once():
    async with Server(Answering(OK)) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        assert await buffered(body) == b'ok'
        with pytest.raises(RuntimeError, match='^the response body has been read: it can be read '
                                               r'once, so keep what buffered\(\) returned$'):
            await buffered(body)


@on_loops
async def test_a_body_is_read_by_one_task_at_a_time():
    async with (Server(holding(b'HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nab')) as server,
                pool() as request):
        _, _, body = await request(b'GET', server.url)
        first = asyncio.ensure_future(buffered(body))
        await turns(5)
        error = await failure(anext(body))
        assert message_of(error) == (
            'reading the response body: RuntimeError: the body is being read by another task')
        first.cancel()
        await asyncio.wait([first])


@on_loops
async def test_a_body_that_is_closed_closes_its_connection_and_fails_who_reads_on():
    script = holding(b'HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nab')
    async with Server(script) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        assert await anext(body) == b'ab'
        await body.aclose()
        error = await failure(anext(body))
        assert type(error) is HttpDataError
        await until(lambda: script.closed)


@on_loops
async def test_a_body_that_is_dropped_closes_its_connection():
    script = holding(b'HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nab')
    async with Server(script) as server, pool() as request:
        await request(b'GET', server.url)
        gc.collect()
        await until(lambda: script.closed)


# ------------------------------------------------------------------------------------------ errors

def test_the_errors_tell_by_their_classes_whether_the_request_may_have_arrived():
    assert issubclass(HttpConnectionError, HttpError)
    assert issubclass(HttpDnsError, HttpConnectionError)
    assert issubclass(HttpTlsError, HttpConnectionError)
    assert issubclass(HttpDataError, HttpError)
    assert issubclass(HttpConnectionClosedError, HttpDataError)
    assert issubclass(HttpHeaderTooLong, HttpDataError)
    assert not issubclass(HttpDataError, HttpConnectionError)


@on_loops
async def test_a_request_of_which_nothing_was_sent_raises_http_connection_error():
    [sock] = bound_to('127.0.0.1')
    with sock:
        port = sock.getsockname()[1]
        async with pool() as request:
            error = await failure(request(b'GET', f'http://127.0.0.1:{port}/'))
    assert type(error) is HttpConnectionError
    assert type(error.__cause__) is ConnectionRefusedError
    assert error.phase is Phase.CONNECT
    assert str(error) == f'GET http://127.0.0.1:{port}: connecting failed: 127.0.0.1: ' + REFUSED


@on_loops
async def test_a_request_that_may_have_been_heard_raises_http_data_error():
    async def script(peer):
        await peer.read_head()

    async with Server(script) as server, pool() as request:
        error = await failure(request(b'GET', server.url))
    assert type(error) is HttpConnectionClosedError
    assert isinstance(error, HttpDataError)
    assert (error.reused, error.response_started) == (False, False)
    assert str(error) == (
        f'GET {server.origin} (peer 127.0.0.1:{server.port}), reading the response head: '
        'the peer closed the connection, after no byte of it (the port may be for https)')


@on_loops
async def test_an_error_tells_if_the_connection_was_reused_and_if_the_response_had_started():
    async def script(peer):
        await peer.read_head()
        await peer.send(OK)
        await peer.read_head()
        await peer.send(response)

    async with Server(script) as server, pool() as request:
        for response, has_started in ((b'', False), (b'HTTP/1.1 2', True)):  # noqa: B007
            await get(request, server.url)
            error = await failure(get(request, server.url))
            assert type(error) is HttpConnectionClosedError
            assert (error.reused, error.response_started) == (True, has_started)


@on_loops
async def test_a_head_that_is_longer_than_max_header_length_raises_http_header_too_long():
    response = b'HTTP/1.1 200 OK\r\nx: %b\r\n\r\n' % bytes(100)
    async with Server(Answering(response)) as server, pool(max_header_length=50) as request:
        error = await failure(get(request, server.url))
    assert type(error) is HttpHeaderTooLong
    assert isinstance(error.__cause__, ValueError)
    assert str(error) == (
        f'GET {server.origin} (peer 127.0.0.1:{server.port}), reading the response head: '
        'the head is longer than max_header_length, 50 bytes')


@on_loops
async def test_what_a_function_of_the_caller_raises_is_the_cause():
    class Mine(Exception):
        pass

    def raising(*args, **kwargs):
        raise Mine

    async with Server(Answering(OK)) as server:
        async with pool(get_sock=raising) as request:
            error = await failure(request(b'GET', server.url))
            assert type(error) is HttpConnectionError
            assert type(error.__cause__) is Mine
        async with pool() as request:
            error = await failure(put(server, request, raising, length=1))
            assert type(error) is HttpConnectionError
            assert type(error.__cause__) is Mine


# -------------------------------------------------------------------------------------------- time

@on_clock
async def test_looking_up_connecting_and_tls_together_have_socket_timeout():
    async def resolve(host):
        await asyncio.sleep(3)
        return [ipaddress.ip_address('127.0.0.1')]

    async def script(peer):
        await peer.closed()  # its part of the handshake never comes

    async with Server(script) as server, pool(
            socket_timeout=5, get_dns_resolver=resolving(resolve)) as request:
        error = await failure(await ends_after(
            5, request(b'GET', f'https://name.test:{server.port}/')))
    assert isinstance(error, HttpConnectionError)
    assert type(error.__cause__) is TimeoutError


@on_clock
async def test_the_head_of_a_response_has_socket_timeout():
    async with Server(holding()) as server, pool(socket_timeout=5) as request:
        error = await failure(await ends_after(5, request(b'GET', server.url)))
    assert type(error) is HttpDataError
    assert type(error.__cause__) is TimeoutError
    assert not error.response_started


@on_clock
async def test_each_read_of_a_body_has_socket_timeout_anew():
    async def script(peer):
        await peer.read_head()
        await peer.send(b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n')
        for _ in range(3):
            await asyncio.sleep(4)
            await peer.send(b'a')
        await peer.closed()

    async def read():
        async for chunk in body:
            chunks.append(chunk)

    chunks = []
    async with Server(script) as server, pool(socket_timeout=5) as request:
        _, _, body = await request(b'GET', server.url)
        error = await failure(await ends_after(3 * 4 + 5, read()))
    assert chunks == [b'a'] * 3
    assert type(error) is HttpDataError
    assert type(error.__cause__) is TimeoutError


@on_clock
async def test_each_progress_of_sending_has_socket_timeout():
    async def script(peer):
        peer.writer.transport.pause_reading()
        await forever()

    async with Server(script) as server, pool(socket_timeout=5, get_sock=small_sock) as request:
        seconds, task = await measured(
            put(server, request, streamed(bytes(10_000_000)), length=10_000_000),
            lambda: server.peers)
        error = await failure(task)
    assert 5 <= seconds < 60
    assert type(error) is HttpDataError
    assert type(error.__cause__) is TimeoutError


@on_clock
async def test_no_time_runs_while_the_code_of_the_caller_does():
    async def body():
        await passing(60)
        yield b'ok'

    hello = b'HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello'
    async with (Server(Answering(hello)) as server,
                pool(socket_timeout=5, recv_bufsize=1) as request):
        _, _, response_body = await put(server, request, body, length=2)
        await anext(response_body)
        await passing(60)
        assert await buffered(response_body) == b'ello'


@on_clock
async def test_asyncio_timeout_limits_all_of_a_request():
    async def get_in_time():
        async with asyncio.timeout(3):
            await get(request, server.url)

    async with Server(holding()) as server, pool() as request:
        task = await ends_after(3, get_in_time())
        assert type(task.exception()) is TimeoutError
        assert task.cancelling() == 0


@on_clock
async def test_a_time_out_of_lowhaio_cancels_no_task():
    async with Server(holding()) as server, pool(socket_timeout=5) as request:
        task = await ends_after(5, request(b'GET', server.url))
        assert type(task.exception()) is HttpDataError
        assert task.cancelling() == 0


@on_clock
async def test_timeout_limits_a_block_and_can_start_anew():
    async def block():
        with timeout(asyncio.get_running_loop(), 5) as start_anew:
            await asyncio.sleep(4)
            start_anew()
            await forever()

    task = await ends_after(4 + 5, block())
    assert type(task.exception()) is asyncio.TimeoutError
    assert task.cancelling() == 0


# ------------------------------------------------------------------------------------ cancellation

@on_loops
async def test_a_cancelled_request_closes_its_connection_and_keeps_the_message():
    script = holding()
    async with Server(script) as server, pool() as request:
        task = asyncio.ensure_future(request(b'GET', server.url))
        await until(lambda: server.peers)
        task.cancel('enough')
        with pytest.raises(asyncio.CancelledError, match='^enough$'):
            await task
        await until(lambda: script.closed or not server.peers[0].reader)


@on_loops
async def test_a_cancelled_reading_of_a_body_closes_its_connection():
    script = holding(b'HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n')
    async with Server(script) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        task = asyncio.ensure_future(buffered(body))
        await turns(5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: script.closed)


@on_loops
async def test_the_finally_of_a_body_has_run_in_the_same_task_when_the_exception_arrives():
    tasks = []

    async def body():
        try:
            yield b'a'
            await forever()
        finally:
            await asyncio.sleep(0)
            tasks.append(asyncio.current_task())

    async def send():
        try:
            await put(server, request, body, length=9)
        finally:
            assert tasks == [asyncio.current_task()]

    async with Server(holding()) as server, pool() as request:
        task = asyncio.ensure_future(send())
        await until(lambda: server.peers)
        await turns(10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@on_loops
async def test_scopes_work_inside_of_a_body_and_a_resolver():
    async def resolve(host):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await forever()
        return [ipaddress.ip_address('127.0.0.1')]

    async def body():
        async with asyncio.TaskGroup() as group:
            group.create_task(turns(3))
        yield b'ok'

    answering = Answering(OK)
    async with Server(answering) as server, pool(get_dns_resolver=resolving(resolve)) as request:
        code, _, _ = await request(b'PUT', f'http://name.test:{server.port}/',
                                   headers=of_length(2), body=body)
    assert code == b'200'
    assert answering.bodies == [b'ok']


# ------------------------------------------------------------------- connections, reuse, the pool

@SCHEMES
@on_loops
async def test_a_connection_is_used_again(scheme):
    answering = Answering(OK)
    async with (Server(answering, context_of(scheme)) as server,
                pool(get_ssl_context=trusting) as request):
        for _ in range(3):
            assert (await get(request, server.url))[2] == b'ok'
    assert answering.connections == [0, 0, 0]


@on_loops
async def test_a_connection_is_free_when_the_response_has_arrived_even_if_it_is_not_read():
    answering = Answering(OK)
    async with Server(answering) as server, pool() as request:
        _, _, body = await request(b'GET', server.url)
        await get(request, server.url)
        assert await buffered(body) == b'ok'
    assert answering.connections == [0, 0]


@on_loops
async def test_requests_at_once_have_a_connection_each():
    answering = Answering(OK)
    async with Server(answering) as server, pool() as request:
        await asyncio.gather(*(get(request, server.url) for _ in range(3)))
        assert sorted(answering.connections) == [0, 1, 2]


@on_loops
async def test_origins_never_share_connections():
    answering = Answering(OK)
    options = {'get_ssl_context': trusting, 'get_dns_resolver': always('127.0.0.1')}
    context = certified('127.0.0.1', 'name.test')
    async with (Server(answering) as plain, Server(answering) as other,
                Server(answering, context) as tls, pool(**options) as request):
        for _ in range(2):
            for server, host in ((plain, '127.0.0.1'), (plain, 'name.test'), (plain, 'a.test'),
                                 (other, '127.0.0.1'), (tls, '127.0.0.1'), (tls, 'name.test')):
                scheme = 'https' if server is tls else 'http'
                await get(request, f'{scheme}://{host}:{server.port}/')
        assert [len(server.peers) for server in (plain, other, tls)] == [3, 1, 2]


@on_loops
@pytest.mark.parametrize('response', [
    b'HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok',
    b'HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok',
    b'HTTP/1.1 200 OK\r\nkeep-alive: timeout=1\r\ncontent-length: 2\r\n\r\nok',
    b'HTTP/1.1 204 No Content\r\ncontent-length: 2\r\n\r\n',
], ids=['close', 'HTTP/1.0', 'a time that is too short', '204 that declares content'])
async def test_a_connection_that_the_response_ends_is_not_used_again(response):
    answering = Answering(response)
    async with Server(answering) as server, pool() as request:
        for _ in range(2):
            await get(request, server.url)
    assert answering.connections == [0, 1]


@on_clock
async def test_a_connection_idles_for_at_most_keep_alive_timeout():
    script = holding(OK)
    async with Server(script) as server, pool(keep_alive_timeout=5) as request:
        await get(request, server.url)
        await passing(4.999)
        assert script.closed == 0
        await passing(0.001)
        await until(lambda: script.closed)


@on_loops
async def test_keep_alive_timeout_0_is_a_connection_for_each_request():
    answering = Answering(OK)
    async with Server(answering) as server, pool(keep_alive_timeout=0) as request:
        for _ in range(2):
            await get(request, server.url)
    assert answering.connections == [0, 1]


@on_loops
async def test_a_connection_that_the_server_has_closed_is_not_used_again():
    answering = Answering(OK, close_after=True)
    async with Server(answering) as server, pool() as request:
        for _ in range(3):
            assert (await get(request, server.url))[0] == b'200'
            await turns(10)
    assert answering.connections == [0, 1, 2]


@on_loops
async def test_bytes_that_nobody_asked_for_are_never_a_response():
    answering = Answering(OK + b'HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged')
    async with Server(answering) as server, pool() as request:
        for _ in range(2):
            assert (await get(request, server.url))[2] == b'ok'
    assert answering.connections == [0, 1]


@on_loops
async def test_max_requests_per_connection():
    answering = Answering(OK)
    async with Server(answering) as server, pool(max_requests_per_connection=2) as request:
        for _ in range(4):
            await get(request, server.url)
    assert answering.connections == [0, 0, 1, 1]


@on_loops
@pytest.mark.parametrize('option', ['max_connections', 'max_connections_per_origin'])
async def test_beyond_a_limit_of_connections_requests_wait_and_the_longest_waiter_is_next(option):
    answering = Answering(OK)
    served = []

    async def request_in_turn(number):
        await get(request, server.url)
        served.append(number)

    async with Server(answering) as server, pool(**{option: 1}) as request:
        async with asyncio.TaskGroup() as group:
            for number in range(5):
                group.create_task(request_in_turn(number))
    assert set(answering.connections) == {0}
    assert served == [0, 1, 2, 3, 4]


@on_loops
async def test_an_idle_connection_gives_its_place_to_another_origin():
    async with (Server(Answering(OK)) as first, Server(Answering(OK)) as second,
                pool(max_connections=1) as request):
        for server in (first, second, first):
            await get(request, server.url)
        assert (len(first.peers), len(second.peers)) == (2, 1)


@on_clock
async def test_a_request_waits_for_a_connection_for_at_most_pool_timeout():
    async with (Server(holding(b'HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n')) as server,
                pool(max_connections=1, pool_timeout=5) as request):
        _, _, body = await request(b'GET', server.url)
        error = await failure(await ends_after(5, request(b'GET', server.url)))
        assert type(error) is HttpConnectionError
        assert error.phase == 'pool'
        assert type(error.__cause__) is TimeoutError


@on_loops
async def test_get_connection_makes_the_connections():
    asked = []

    async def get_connection(scheme, host, port):
        asked.append((scheme, host, port))
        sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ('127.0.0.1', server.port))
        return sock

    async with (Server(Answering(OK), certified('name.test')) as server,
                pool(get_connection=get_connection, get_ssl_context=trusting) as request):
        for _ in range(2):
            assert (await get(request, 'https://name.test/'))[2] == b'ok'
    assert asked == [('https', 'name.test', 443)]


@on_loops
async def test_get_sock_makes_the_sockets():
    families = []

    def get_sock(family):
        families.append(family)
        sock = socket.socket(family)
        sock.setblocking(False)
        return sock

    async with Server(Answering(OK)) as server, pool(get_sock=get_sock) as request:
        await get(request, server.url)
    assert families == [socket.AF_INET]


def test_a_pool_that_was_used_belongs_to_its_process():
    with ThreadServer(AnsweringInThreads()) as server:
        ended = run_script('''
import asyncio, os, sys
from lowhaio import Pool

request, close = Pool()

async def get():
    try:
        code, _, _ = await request(b'GET', sys.argv[1])
        print(code, flush=True)
    except Exception as error:
        print(str(error).partition(', ')[2])

with asyncio.Runner() as runner:
    runner.run(get())
    if not os.fork():
        asyncio.Runner().run(get())
        sys.stdout.flush()
        os._exit(0)
    os.wait()
    runner.run(get())
    runner.run(close())
''', server.url)
    assert ended.stdout.splitlines() == [
        "b'200'",
        'refused: the pool was used before this process was forked, and its connections are those '
        'of the parent: make one Pool for each process',
        "b'200'"]


# ------------------------------------------------------------------------------------- DNS

@on_loops
async def test_names_are_asked_for_again_when_their_records_are_stale():
    asked = []

    async def resolve(host):
        asked.append(host)
        expires_at = asyncio.get_running_loop().time() + ttl
        return [aiodnsresolver.IPv4AddressExpiresAt('127.0.0.1', expires_at=expires_at)]

    async with Server(Answering(OK)) as server, pool(
            get_dns_resolver=resolving(resolve), min_ttl=0) as request:
        for host, ttl, queries in (('fresh.test', 300, 1), ('stale.test', 0, 3)):  # noqa: B007
            for _ in range(3):
                await get(request, f'http://{host}:{server.port}/')
            assert asked.count(host) == queries


@on_loops
async def test_requests_at_once_share_a_lookup():
    asked = []

    async def resolve(host):
        asked.append(host)
        await turns(5)
        return [ipaddress.ip_address('127.0.0.1')]

    async with Server(Answering(OK)) as server, pool(
            get_dns_resolver=resolving(resolve)) as request:
        await asyncio.gather(*(get(request, f'http://name.test:{server.port}/')
                               for _ in range(3)))
    assert asked == ['name.test']


@on_loops
async def test_a_connection_to_an_address_that_the_name_no_longer_has_is_not_used_again():
    addresses = ['127.0.0.1']

    async def resolve(host):
        return [ipaddress.ip_address(address) for address in addresses]

    socks = bound_to('127.0.0.1', '127.0.0.2')
    async with (ServerAt(socks[0], Answering(OK)) as old, ServerAt(socks[1], Answering(OK)) as new,
                pool(get_dns_resolver=resolving(resolve)) as request):
        await get(request, f'http://name.test:{old.port}/')
        addresses[:] = ['127.0.0.2']
        await get(request, f'http://name.test:{old.port}/')
        assert (len(old.peers), len(new.peers)) == (1, 1)


@on_loops
async def test_new_connections_begin_with_the_next_address_each_time():
    socks = bound_to('127.0.0.1', '127.0.0.2')
    async with (ServerAt(socks[0], Answering(OK)) as first,
                ServerAt(socks[1], Answering(OK)) as second,
                pool(get_dns_resolver=always('127.0.0.1', '127.0.0.2'),
                     keep_alive_timeout=0) as request):
        for _ in range(4):
            await get(request, f'http://name.test:{first.port}/')
        assert (len(first.peers), len(second.peers)) == (2, 2)


@on_loops
async def test_an_address_that_refuses_is_followed_by_the_next_at_once():
    socks = bound_to('127.0.0.1', '127.0.0.2')
    with socks[0]:
        async with (ServerAt(socks[1], Answering(OK)) as server,
                    pool(get_dns_resolver=always('127.0.0.1', '127.0.0.2')) as request):
            assert (await get(request, f'http://name.test:{server.port}/'))[2] == b'ok'


@on_clock
async def test_an_address_that_is_silent_is_followed_by_the_next_after_a_quarter_second():
    def get_sock(family):
        socks.append(socket.socket(family))
        return socks[-1]

    socks = []
    silent, served = bound_to('127.0.0.1', '127.0.0.2')
    with silent, full_backlog(silent):
        async with (ServerAt(served, Answering(OK)) as server,
                    pool(get_dns_resolver=always('127.0.0.1', '127.0.0.2'),
                         get_sock=get_sock) as request):
            task = asyncio.create_task(get(request, f'http://name.test:{server.port}/'))
            await until(lambda: socks)
            await passing(0.24)
            assert len(socks) == 1
            # No more than that: if the rest were waited for, this would hang.
            await passing(0.01)
            assert (await task)[2] == b'ok'
            assert len(socks) == 2


@on_loops
async def test_when_all_addresses_fail_the_error_names_each_with_its_reason():
    socks = bound_to('127.0.0.1', '127.0.0.2')
    port = socks[0].getsockname()[1]
    with socks[0], socks[1]:
        async with pool(get_dns_resolver=always('127.0.0.1', '127.0.0.2')) as request:
            error = await failure(request(b'GET', f'http://name.test:{port}/'))
    assert type(error) is HttpConnectionError
    assert str(error) == (f'GET http://name.test:{port}: connecting failed: '
                          f'127.0.0.1: {REFUSED}; 127.0.0.2: {REFUSED}')


@on_loops
async def test_aaaa_records_are_asked_for_when_there_is_no_a_record():
    async def resolve_ipv6(host):
        asked.append(host)
        return [ipaddress.ip_address('::ffff:127.0.0.1')]

    asked = []
    async with Server(Answering(OK)) as server, pool(
            get_dns_resolver=resolving(no_address, resolve_ipv6)) as request:
        assert (await get(request, f'http://name.test:{server.port}/'))[2] == b'ok'
    assert asked == ['name.test']


@on_loops
async def test_a_name_that_has_no_address_raises_http_dns_error():
    nameserver = Nameserver()
    nameserver.answers = {'no.test': 'NXDOMAIN', 'empty.test': [], 'broken.test': 'SERVFAIL'}
    causes = {'no.test': aiodnsresolver.DnsRecordDoesNotExist,
              'empty.test': aiodnsresolver.DnsNoMatchingAnswers,
              'broken.test': aiodnsresolver.DnsResponseCode}
    try:
        async with pool(get_dns_resolver=asking((1, nameserver.address))) as request:
            for host, cause in causes.items():
                error = await failure(request(b'GET', f'http://{host}/'))
                assert type(error) is HttpDnsError
                assert type(error.__cause__) is cause
    finally:
        nameserver.stop()


@on_loops
async def test_a_failed_lookup_is_not_remembered():
    asked = []

    async def resolve(host):
        asked.append(host)
        if len(asked) == 1:
            raise aiodnsresolver.DnsResponseCode
        return [ipaddress.ip_address('127.0.0.1')]

    async with Server(Answering(OK)) as server, pool(
            get_dns_resolver=resolving(resolve)) as request:
        error = await failure(request(b'GET', f'http://name.test:{server.port}/'))
        assert type(error) is HttpDnsError
        assert (await get(request, f'http://name.test:{server.port}/'))[2] == b'ok'


# --------------------------------------------------------------------------------------------- TLS

def test_tls_is_version_1_2_or_later_and_offers_http_1_1():
    context = default_of('get_ssl_context')()
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


@on_loops
async def test_a_certificate_of_an_unknown_authority_raises_http_tls_error():
    async with Server(Answering(OK), certified('127.0.0.1')) as server, pool() as request:
        error = await failure(request(b'GET', server.url))
    assert type(error) is HttpTlsError
    assert type(error.__cause__) is ssl.SSLCertVerificationError


@on_loops
@pytest.mark.parametrize('host', ['127.0.0.1', 'name.test'])
async def test_a_certificate_for_another_host_raises_http_tls_error(host):
    async with (Server(Answering(OK), certified('other.test', '127.0.0.2')) as server,
                pool(get_ssl_context=trusting, get_dns_resolver=always('127.0.0.1')) as request):
        error = await failure(request(b'GET', f'https://{host}:{server.port}/'))
    assert type(error) is HttpTlsError
    assert type(error.__cause__) is ssl.SSLCertVerificationError


@on_loops
async def test_get_ssl_context_is_called_at_the_first_https_request():
    calls = []

    def get_ssl_context():
        calls.append(True)
        return trusting()

    async with (Server(Answering(OK)) as plain,
                Server(Answering(OK), certified('127.0.0.1')) as tls,
                pool(get_ssl_context=get_ssl_context, keep_alive_timeout=0) as request):
        await get(request, plain.url)
        assert calls == []
        for _ in range(2):
            assert (await get(request, tls.url))[2] == b'ok'
    assert calls == [True]


@on_loops
async def test_a_tls_session_is_resumed_by_the_next_connection():
    async def script(peer):
        resumed.append(peer.writer.get_extra_info('ssl_object').session_reused)
        await Answering(OK)(peer)

    resumed = []
    async with (Server(script, certified('127.0.0.1')) as server,
                pool(get_ssl_context=trusting, keep_alive_timeout=0) as request):
        for _ in range(2):
            await get(request, server.url)
    assert resumed == [False, True]


def test_a_body_that_ends_with_the_connection_must_end_with_close_notify_over_tls():
    def script(sock):
        receive_head(sock)
        sock.sendall(b'HTTP/1.1 200 OK\r\n\r\nsome')
        sock.shutdown(socket.SHUT_WR)
        receive_end(sock)

    async def main():
        async with pool(get_ssl_context=trusting) as request:
            error = await failure(get(request, server.url))
        assert type(error) is HttpConnectionClosedError

    with ThreadServer(script, certified('127.0.0.1')) as server:
        asyncio.run(main())


def test_a_missing_client_certificate_is_an_error_of_the_data_in_tls_1_3():
    async def main():
        async with pool(get_ssl_context=trusting) as request:
            error = await failure(get(request, server.url))
        assert isinstance(error, HttpDataError)

    context = certified('127.0.0.1', version=ssl.TLSVersion.TLSv1_3)
    context.verify_mode = ssl.CERT_REQUIRED
    with ThreadServer(receive_head, context) as server:
        asyncio.run(main())


# --------------------------------------------------------------------------------------- options

def test_the_options_are_keywords():
    with pytest.raises(TypeError):
        Pool(aiodnsresolver.Resolver)
    with pytest.raises(TypeError):
        Pool(redirects=1)


def test_the_defaults_of_the_options():
    defaults = {name: parameter.default
                for name, parameter in inspect.signature(Pool).parameters.items()
                if not callable(parameter.default)}
    assert defaults == {
        'get_connection': None, 'http_version': b'HTTP/1.1', 'keep_alive_timeout': 15,
        'recv_bufsize': 122880, 'max_header_length': 16384, 'socket_timeout': 10,
        'max_connections': None, 'max_connections_per_origin': None, 'pool_timeout': None,
        'max_requests_per_connection': None, 'max_idle_connections': None,
        'min_ttl': 1, 'max_stale': 30, 'max_grace': 60, 'max_lookups': 100,
            'on_event': None}


@on_loops
async def test_the_resolver_reads_the_hosts_file_and_resolv_conf_by_default(tmp_path):
    hosts, resolv_conf = tmp_path / 'hosts', tmp_path / 'resolv.conf'
    hosts.write_text('127.0.0.1 Local.Test\n')
    resolv_conf.write_text('nameserver 127.0.0.1\n')
    nameserver = Nameserver()
    nameserver.answers = {'name.test': ['127.0.0.1']}
    get_dns_resolver = functools.partial(
        default_of('get_dns_resolver'), hosts=str(hosts), resolv_conf=str(resolv_conf),
        port=nameserver.address[1])
    try:
        async with (Server(Answering(OK)) as server,
                    pool(get_dns_resolver=get_dns_resolver) as request):
            for name in ('local.test', 'name.test', 'sub.localhost'):
                assert (await get(request, f'http://{name}:{server.port}/'))[2] == b'ok'
        assert nameserver.queries == {'name.test': 1}
    finally:
        nameserver.stop()


def test_a_request_has_these_parameters():
    request, close = Pool()
    assert [(name, parameter.default) for name, parameter
            in list(inspect.signature(request).parameters.items())[:7]] == [
        ('method', inspect.Parameter.empty), ('url', inspect.Parameter.empty), ('params', ()),
        ('headers', ()), ('body', empty_async_iterator), ('body_args', ()), ('body_kwargs', ())]
    adapters = ['get_logger_adapter', 'get_resolver_logger_adapter']
    parameters = inspect.signature(request).parameters
    assert list(parameters)[7:] == [*adapters, 'timeouts', 'target', 'server_hostname']
    assert {parameters[name].default for name in list(parameters)[9:]} == {None}
    assert list(inspect.signature(close).parameters) == adapters


def test_an_option_is_checked_when_the_pool_is_made():
    with pytest.raises(ValueError, match='^socket_timeout must be a number of seconds, got 0$'):
        Pool(socket_timeout=0)
    with pytest.raises(ValueError, match="^http_version must be b'HTTP/1.1' or b'HTTP/1.0', "
                                         "got b'HTTP/2'$"):
        Pool(http_version=b'HTTP/2')


@on_loops
async def test_http_1_0_may_be_asked_for():
    answering = Answering(OK)
    async with Server(answering) as server, pool(http_version=b'HTTP/1.0') as request:
        for _ in range(2):
            await get(request, server.url)
    assert answering.heads[0].startswith(b'GET / HTTP/1.0\r\n')
    assert answering.connections == [0, 1]  # for want of `connection: keep-alive`


def test_the_default_socket_sends_at_once_and_probes_its_peer():
    with default_of('get_sock')(socket.AF_INET6) as sock:
        assert sock.family == socket.AF_INET6
        assert sock.type == socket.SOCK_STREAM
        assert sock.gettimeout() == 0
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, 'TCP_KEEPIDLE'):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60


# --------------------------------------------------------------------------------------- logging

@on_loops
async def test_each_response_is_logged_at_info_without_its_query(caplog):
    caplog.set_level(logging.INFO, 'lowhaio')
    async with Server(Answering(OK)) as server, pool() as request:
        await get(request, server.url + 'page?SECRET')
    assert caplog.record_tuples == [
        ('lowhaio', logging.INFO, f'[http:GET,{server.url}page] Received 200 from '
                                  f'{server.origin} (peer 127.0.0.1:{server.port})')]


@on_loops
async def test_a_request_that_waits_for_a_connection_is_logged_at_info(caplog):
    caplog.set_level(logging.INFO, 'lowhaio')
    async with (Server(holding(b'HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n')) as server,
                pool(max_connections=1, pool_timeout=0.01) as request):
        _, _, body = await request(b'GET', server.url)
        await failure(request(b'GET', server.url))
    assert caplog.messages[1] == (
        f'[http:GET,{server.url}] Waiting for a connection: 1 in use, and max_connections is 1')


@on_loops
async def test_an_adapter_may_be_given_for_the_pool_or_for_a_request():
    used = []

    def adapter_named(name):
        def get_logger_adapter(extra):
            used.append((name, list(extra.values())))
            return logging.LoggerAdapter(logging.getLogger('quiet'), extra)

        return get_logger_adapter

    async with (Server(Answering(OK)) as server,
                pool(get_logger_adapter=adapter_named('pool')) as request):
        await request(b'GET', server.url)
        await request(b'GET', server.url, get_logger_adapter=adapter_named('request'))
    assert [('pool', ['GET', server.url]), ('request', ['GET', server.url])] == used[:2]


# --------------------------------------------------------------------------------------- closing

@on_loops
async def test_close_closes_idle_connections_at_once():
    ends = []

    async def script(peer):
        await peer.read_head()
        await peer.send(OK)
        ends.append(await peer.closed())

    request, close = Pool()
    async with Server(script) as server, Server(script) as other:
        await asyncio.gather(*[get(request, url) for url in (server.url, server.url, other.url)])
        await turns(5)
        assert ends == []
        await close()
        await until(lambda: ends == [b'', b'', b''])


@SCHEMES
@on_loops
async def test_close_lets_a_response_end_and_then_closes(scheme):
    ends = []
    go_on = asyncio.Event()

    async def script(peer):
        await peer.read_head()
        await peer.send(OK[:-1])
        await go_on.wait()
        await peer.send(OK[-1:])
        ends.append(await peer.closed())

    request, close = Pool(get_ssl_context=trusting)
    async with Server(script, context_of(scheme)) as server:
        _, _, body = await request(b'GET', server.url)
        waiting = asyncio.create_task(request(b'GET', server.url))
        await turns(5)
        await close()
        await turns(5)
        assert ends == []
        go_on.set()
        assert await buffered(body) == b'ok'
        _, _, body = await waiting
        assert await buffered(body) == b'ok'
        await until(lambda: ends == [b'', b''])


@on_loops
async def test_a_request_after_close_raises_http_connection_error():
    request, close = Pool()
    await close()
    await close()
    error = await failure(request(b'GET', 'http://example.com/'))
    assert type(error) is HttpConnectionError
    assert type(error.__cause__) is RuntimeError
    assert (error.phase, error.reused, error.response_started) == ('refused', False, False)
    assert str(error) == 'GET http://example.com:80, refused: the pool is closed'


@pytest.mark.parametrize('factory', LOOPS.values(), ids=LOOPS)
def test_a_pool_is_made_before_any_loop_and_belongs_to_the_loop_of_its_first_request(factory):
    request, close = Pool()

    async def first():
        async with Server(Answering(OK)) as server:
            assert (await get(request, server.url))[2] == b'ok'
            await turns(5)

    async def second():
        error = await failure(request(b'GET', 'http://127.0.0.1:1/'))
        assert str(error) == (
            'GET http://127.0.0.1:1, refused: the pool is bound to the event loop of its first '
            'request and can not be used from another: make one Pool for each loop')
        await close()

    for main in (first, second):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())
