"""What is logged, by which adapter, and what happens when something of the caller's raises."""

import asyncio
import contextlib
import logging
import weakref
from ipaddress import IPv4Address

import aiodnsresolver
import pytest

from lowhaio import (
    HttpConnectionError,
    HttpDataError,
    HttpDnsError,
    HttpError,
    HttpTlsError,
    Pool,
    streamed,
)
from tests.harness import (
    OK,
    SCHEMES,
    UNFINISHED,
    Answering,
    Server,
    Sockets,
    bound_to,
    context_of,
    failure,
    forever,
    get,
    holding,
    no_address,
    on_loops,
    pool,
    resolving,
    row,
    trusting,
    turns,
    until,
    where,
)


def resolver_of_localhost(get_logger_adapter):
    """The real resolver, with every name in its hosts."""
    async def get_host(hosts, fqdn, qtype):
        return aiodnsresolver.IPv4AddressExpiresAt('127.0.0.1', expires_at=0)

    return aiodnsresolver.Resolver(get_host=get_host, get_logger_adapter=get_logger_adapter)


@on_loops
async def test_a_request_is_logged(caplog):
    caplog.set_level(logging.DEBUG, 'lowhaio')
    async with Server(Answering(OK)) as server, pool() as request:
        url = server.url + '%41?SECRET'
        for _ in range(2):
            await get(request, url)
        await request(b'POST', server.url)
    where = f'{server.origin} (peer 127.0.0.1:{server.port})'
    debug = ('lowhaio', logging.DEBUG)
    info = ('lowhaio', logging.INFO)
    assert caplog.record_tuples == [
        (*info, f'[http:GET,{server.url}%41] Received 200 from {where}'),
        (*debug, f'[http:GET,{url}] That was request 1 of its connection'),
        (*info, f'[http:GET,{server.url}%41] Received 200 from {where}'),
        (*debug, f'[http:GET,{url}] That was request 2 of its connection'),
        (*info, f'[http:POST,{server.url}] Received 200 from {where}'),
        (*debug, f'[http:POST,{server.url}] That was request 3 of its connection'),
        (*debug, '[http] Closing the pool'),
    ]


@on_loops
async def test_the_resolver_logs_for_which_request_it_resolves(caplog):
    caplog.set_level(logging.WARNING, 'lowhaio')
    caplog.set_level(logging.INFO, 'aiodnsresolver')
    async with Server(Answering(OK)) as server, \
            pool(get_dns_resolver=resolver_of_localhost) as request:
        await get(request, f'http://any.example:{server.port}/?SECRET')
    assert caplog.record_tuples == [(
        'aiodnsresolver', logging.INFO,
        f'[http:GET,http://any.example:{server.port}/] [dns:any.example,A] Resolved '
        "b'any.example' from hosts: 127.0.0.1")]


class Adapters:
    """The `get_logger_adapter` and `get_resolver_logger_adapter` of a caller, with a name."""

    def __init__(self, name, log):
        self.name = name
        self.log = log
        self.options = {'get_logger_adapter': self.get_logger_adapter,
                        'get_resolver_logger_adapter': self.get_resolver_logger_adapter}

    def get_logger_adapter(self, extra):
        self.log.append((self.name, extra))
        return logging.LoggerAdapter(logging.getLogger('quiet'), extra)

    def get_resolver_logger_adapter(self, extra):
        def get_logger_adapter(resolver_extra):
            self.log.append((self.name + '-dns', {**extra, **resolver_extra}))
            return logging.LoggerAdapter(logging.getLogger('quiet'), extra)

        return get_logger_adapter


@on_loops
async def test_the_adapters_are_those_of_the_pool_or_else_of_the_call():
    def get_dns_resolver(get_logger_adapter):
        async def resolve(name, kind, get_logger_adapter):
            get_logger_adapter({'resolve': name})
            return (IPv4Address('127.0.0.1'),)

        async def clear_cache(get_logger_adapter):
            get_logger_adapter({'clear_cache': True})

        get_logger_adapter({'resolver': True})
        return resolve, clear_cache

    log = []
    request, close = Pool(get_dns_resolver=get_dns_resolver, **Adapters('pool', log).options)
    async with Server(Answering(OK)) as server:
        url = f'http://any.example:{server.port}/?query'
        await get(request, url)
        extra = {'lowhaio_method': 'GET', 'lowhaio_url': url}
        assert log == [
            ('pool', extra),
            ('pool-dns', {**extra, 'resolver': True}),
            ('pool-dns', {**extra, 'resolve': 'any.example'})]
        log.clear()
        await get(request, url, **Adapters('request', log).options)
        assert log == [
            ('request', extra),
            ('request-dns', {**extra, 'resolve': 'any.example'})]
        log.clear()
        await close()
        assert log == [('pool', {}), ('pool-dns', {'clear_cache': True})]
        log.clear()
        await close(**Adapters('close', log).options)
        assert log == [('close', {}), ('close-dns', {'clear_cache': True})]
        await turns(5)


class Raising(logging.LoggerAdapter):
    """Raises the error for messages of that level."""

    def __init__(self, level, error):
        super().__init__(logging.getLogger('quiet'), {})
        self.level = level
        self.error = error

    def log(self, level, message, *args, **kwargs):
        if level == self.level:
            raise self.error


def raising_for(level, error=KeyError('why')):  # noqa: B008
    return lambda extra: Raising(level, error)


@pytest.mark.parametrize('error, text', [
    (KeyError('why'), "KeyError: 'why'"),
    (ConnectionResetError('of a socket for logs'), 'ConnectionResetError: of a socket for logs')])
@pytest.mark.parametrize('level', [logging.DEBUG, logging.INFO])
@SCHEMES
@on_loops
async def test_an_adapter_that_raises_is_the_cause_of_an_error_and_leaves_nothing_open(
        scheme, level, error, text):
    """Kept quiet, it would never be known, so the response is lost with it."""
    script = Answering(OK[:-1])
    sockets = Sockets()
    async with Server(script, context_of(scheme)) as server, pool(
            get_ssl_context=trusting, get_sock=sockets) as request:
        raised = await failure(request(
            b'GET', server.url, get_logger_adapter=raising_for(level, error)))
        assert type(raised) is HttpDataError
        assert raised.__cause__ is error
        assert str(raised) == f'{where(server)}logging: {text}'
        assert (raised.reused, raised.response_started) == (False, True)
        assert sockets.socks[0].fileno() == -1
        # What has arrived to its end leaves a connection to be used again.
        script.responses = [OK]
        await get(request, server.url)
        raised = await failure(request(
            b'GET', server.url, get_logger_adapter=raising_for(level, error)))
        assert (type(raised), raised.reused) == (HttpDataError, True)
        await get(request, server.url)
    assert script.connections == [0, 1, 1, 1]


@pytest.mark.parametrize('level', [logging.DEBUG, logging.INFO])
@on_loops
async def test_what_is_no_exception_leaves_an_adapter_and_no_connection(level):
    sockets = Sockets()
    async with Server(holding(UNFINISHED)) as server, pool(get_sock=sockets) as request:
        with pytest.raises(asyncio.CancelledError) as caught:
            await request(b'GET', server.url, get_logger_adapter=raising_for(
                level, asyncio.CancelledError('why')))
        assert caught.value.args == ('why',)
        assert sockets.socks[0].fileno() == -1


def raises(*args, **kwargs):
    raise KeyError('why')


async def raises_later(*args, **kwargs):
    raise KeyError('why')


class RaisingMapping(dict):
    def keys(self):
        raise KeyError('why')

    items = __iter__ = keys


class RaisingIterable:
    def __iter__(self):
        yield (b'a', b'b')
        raise KeyError('why')


# What the caller gives as an option of the pool, or as an argument of the request.
RAISING = {
    'get_dns_resolver': ({'get_dns_resolver': raises}, {}, HttpDnsError, 'name.test'),
    'resolve': ({'get_dns_resolver': lambda **_: (raises_later, None)}, {}, HttpDnsError,
                'name.test'),
    'resolve at once': ({'get_dns_resolver': lambda **_: (raises, None)}, {}, HttpDnsError,
                        'name.test'),
    'get_sock': ({'get_sock': raises}, {}, HttpConnectionError, '127.0.0.1'),
    'get_connection': ({'get_connection': raises_later}, {}, HttpConnectionError, '127.0.0.1'),
    'get_connection at once': ({'get_connection': raises}, {}, HttpConnectionError, '127.0.0.1'),
    'get_ssl_context': ({'get_ssl_context': raises}, {}, HttpTlsError, '127.0.0.1'),
    'get_logger_adapter': ({}, {'get_logger_adapter': raises}, HttpConnectionError, '127.0.0.1'),
    'get_resolver_logger_adapter': (
        {}, {'get_resolver_logger_adapter': raises}, HttpDnsError, 'name.test'),
    'adapter of the resolver': (
        {}, {'get_resolver_logger_adapter': lambda extra: raises}, HttpDnsError, 'name.test'),
    'logging of the resolver': (
        {}, {'get_resolver_logger_adapter': lambda extra: raising_for(logging.INFO)},
        HttpDnsError, 'name.test'),
    'params': ({}, {'params': RaisingMapping(a=1)}, HttpConnectionError, '127.0.0.1'),
    'headers': ({}, {'headers': RaisingIterable()}, HttpConnectionError, '127.0.0.1'),
    'body': ({}, {'body': raises}, HttpConnectionError, '127.0.0.1'),
    'body_args': ({}, {'body': streamed(b''), 'body_args': RaisingIterable()},
                  HttpConnectionError, '127.0.0.1'),
    'body_kwargs': ({}, {'body': streamed(b''), 'body_kwargs': RaisingMapping(a=1)},
                    HttpConnectionError, '127.0.0.1'),
}


@on_loops
async def test_whatever_of_the_caller_raises_in_a_request_is_the_cause_of_an_error():
    for name, (options, arguments, kind, host) in RAISING.items():
        with row(name):
            async with Server(Answering(OK)) as server:
                if kind is HttpDnsError and 'get_dns_resolver' not in options:
                    options = {'get_dns_resolver': resolver_of_localhost}
                request, close = Pool(**options)
                scheme = 'https' if kind is HttpTlsError else 'http'
                url = f'{scheme}://{host}:{server.port}/'
                error = await failure(request(b'GET', url, **arguments))
                assert type(error) is kind
                assert type(error.__cause__) is KeyError
                assert "'why'" in str(error)
                with contextlib.suppress(HttpConnectionError):
                    await close()
                await until(lambda: len(server.peers) == (name in ACCEPTED))  # noqa: B023


@pytest.mark.usefixtures('only_full_collections')
@on_loops
async def test_a_request_that_failed_before_it_was_read_keeps_nothing_until_garbage_is_collected():
    """Its frames, that is, which are in the traceback of its error."""
    async def fail(url, **arguments):
        async def body():
            yield b''

        kept = weakref.ref(body)
        with pytest.raises(HttpError):
            await request(b'GET', url, body=body, **arguments)
        return kept

    def connect(scheme, host, port):
        raise KeyError('why')

    class Failing(logging.LoggerAdapter):
        def info(self, *args):
            # Each time another one: the request has the adapter.
            raise KeyError('why')

    failing = {'get_logger_adapter': lambda extra: Failing(logging.getLogger(), extra)}
    [refusing] = bound_to('127.0.0.1')
    with refusing:
        refused = f'http://127.0.0.1:{refusing.getsockname()[1]}'
        async with Server(Answering(UNFINISHED, OK)) as server:
            for name, options, url, arguments in [
                    ('a refused connection', {}, refused, {}),
                    ('no address', {'get_dns_resolver': resolving(no_address)},
                     'http://name.test', {}),
                    ('get_connection', {'get_connection': connect}, server.url, {}),
                    ('no TLS', {'socket_timeout': 0.1}, server.url.replace('http', 'https'), {}),
                    ('an unfinished response', {}, server.url, failing),
                    ('a whole response', {}, server.url, failing)]:
                with row(name):
                    async with pool(**options) as request:
                        kept = await fail(url, **arguments)
                        await turns(3)
                        assert kept() is None


# Those of which the request got as far as a connection.
ACCEPTED = {'get_ssl_context', 'body', 'body_args', 'body_kwargs'}


@on_loops
async def test_an_adapter_that_raises_as_a_request_has_to_wait_is_the_cause():
    async with Server(holding(UNFINISHED)) as server, pool(max_connections=1) as request:
        _, _, body = await request(b'GET', server.url)
        error = await failure(request(
            b'GET', server.url, get_logger_adapter=raising_for(logging.INFO)))
        assert (type(error), type(error.__cause__)) == (HttpConnectionError, KeyError)
        # It has no place, and waits for none.
        await body.aclose()
        _, _, body = await request(b'GET', server.url)
        await body.aclose()


# The options of a pool, and arguments of `close`.
RAISING_IN_CLOSE = {
    'get_logger_adapter': ({}, {'get_logger_adapter': raises}),
    'logging': ({}, {'get_logger_adapter': raising_for(logging.DEBUG)}),
    'get_resolver_logger_adapter': ({}, {'get_resolver_logger_adapter': raises}),
    'clear_cache': ({'get_dns_resolver': lambda **_: (resolve_to_localhost, raises_later)}, {}),
    'clear_cache at once': ({'get_dns_resolver': lambda **_: (resolve_to_localhost, raises)}, {}),
}


async def resolve_to_localhost(host, kind, get_logger_adapter):
    return [IPv4Address('127.0.0.1')]


@on_loops
async def test_whatever_of_the_caller_raises_in_close_the_pool_is_closed():
    for name, (options, arguments) in RAISING_IN_CLOSE.items():
        with row(name):
            sockets = Sockets()
            options = {'get_dns_resolver': resolver_of_localhost, **options}
            async with Server(Answering(OK)) as server:
                request, close = Pool(get_sock=sockets, **options)
                await get(request, f'http://name.test:{server.port}/')
                assert sockets.socks[0].fileno() != -1
                error = await failure(close(**arguments))
                assert type(error) is HttpConnectionError
                assert type(error.__cause__) is KeyError
                assert str(error) == "closing the pool: KeyError: 'why'"
                assert sockets.socks[0].fileno() == -1
                error = await failure(request(b'GET', server.url))
                assert str(error).endswith('refused: the pool is closed')


@on_loops
async def test_close_can_be_cancelled_with_a_message():
    async def clear_cache(get_logger_adapter):
        await forever()

    request, close = Pool(get_dns_resolver=lambda **_: (resolve_to_localhost, clear_cache))
    async with Server(Answering(OK)) as server:
        await get(request, f'http://name.test:{server.port}/')
        task = asyncio.create_task(close())
        await turns(3)
        task.cancel('why')
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert caught.value.args == ('why',)
