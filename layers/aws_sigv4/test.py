"""Tests of lowhaio_aws_sigv4, against botocore's signer.

Servers that verify signatures are in tests/outside/test_s3.py.
"""

import asyncio
import gc
import hashlib
import inspect
import itertools
import json
import logging
import os
import pathlib
import re
import sys
import tempfile
import tracemalloc
import urllib.parse
from datetime import UTC, datetime, timedelta

import awscrt.auth
import awscrt.http
import botocore.auth
import botocore.awsrequest
import botocore.credentials
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lowhaio_aws_sigv4
from lowhaio import (
    HttpConnectionError,
    Pool,
    buffered,
    empty_async_iterator,
    repeatable,
    streamed,
)
from lowhaio_aws_sigv4 import (
    Form,
    RegionsKey,
    SigningKey,
    aws_sigv4_headers,
    canonical_path,
    names_of,
    object_url,
    presigned,
    signed,
    signed_for_regions,
    split_url,
    string_to_sign,
)
from tests.harness import (
    OK,
    Answering,
    Server,
    connecting_to,
    internet,
    on_loops,
    pool,
    python_blocks,
    response,
    run_block,
    turns,
    value,
    values_of,
)

# Thousands of them take a minute: these are a share, the same in each run. CI asks for more.
EXAMPLES = int(os.environ.get('LOWHAIO_EXAMPLES', '15'))

HERE = pathlib.Path(__file__).parent
EMPTY_HASH = hashlib.sha256().hexdigest()


async def credentials():
    return 'AKID', 'secret', ()


async def sent_by(method, url, **kwargs):
    """A `request` that answers with what it is called with."""
    return method, url, kwargs


def step(coroutine):
    """The result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError('it waits')


# ------------------------------------------------------------------- what AWS has published

VECTORS = json.loads((HERE / 'aws4_testsuite' / 'vectors.json').read_text(encoding='utf-8'))


@pytest.mark.parametrize('name', VECTORS)
def test_the_published_vectors(name):
    vector = VECTORS[name]
    head, _, body = vector['request'].partition('\n\n')
    line, *lines = re.sub(r'\n[ \t]+', ' ', head).split('\n')
    method, target = re.fullmatch('([A-Z]+) (.*) HTTP/1.1', line).groups()
    fields = [tuple(line.encode().split(b':', 1)) for line in lines if line]
    if 'token' in vector:
        fields.append((b'X-Amz-Security-Token', vector['token'].encode()))
    # These have no x-amz-content-sha256, which a signed request always has.
    *_, query = split_url('http://example.amazonaws.com' + target, (), 'service')
    form = Form(names_of(fields), (), ())
    key = SigningKey('wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY', b'20150830', 'us-east-1',
                     'service')
    value = key.sign(string_to_sign(
        b'AWS4-HMAC-SHA256', b'20150830T123600Z', key.scope, method.encode(),
        canonical_path(target.partition('?')[0], 'service'), query, form.lines(fields, []),
        form.signed_names, hashlib.sha256(body.encode()).hexdigest().encode()))
    assert vector['authorization'] == (
        f'AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/{key.scope.decode()}, '
        f'SignedHeaders={form.signed_names.decode()}, Signature={value.decode()}')


# ---------------------------------------------------------------------- botocore as the oracle


# Fields that gateways and proxies write. botocore never sends them, so it signs them if they come.
REWRITTEN = ('accept-encoding', 'forwarded', 'max-forwards', 'proxy-connection', 'via',
             'x-forwarded-for', 'x-forwarded-host', 'x-forwarded-port', 'x-forwarded-proto',
             'x-real-ip')


def check_signature(head: bytes, body: bytes, service: str, secret: str = 'secret', *,
                    is_now: bool = True) -> None:
    """Check the signature against the one that botocore makes of the very bytes that were sent."""
    line, *lines = head.decode().removesuffix('\r\n\r\n').split('\r\n')
    method, target, _ = line.split(' ')
    fields = [tuple(line.split(': ', 1)) for line in lines]
    request = botocore.awsrequest.AWSRequest(
        method, 'http://' + dict(fields)['host'] + target, data=body)
    for name, field in fields:
        if name.lower() not in ('authorization', *REWRITTEN):
            request.headers[name] = field
    is_s3 = service in ('s3', 's3express')
    auth = (botocore.auth.S3SigV4Auth if is_s3 else botocore.auth.SigV4Auth)(
        botocore.credentials.Credentials('AKID', secret), service, 'eu-west-2')
    sent_hash = value(head, b'x-amz-content-sha256').decode()
    assert sent_hash in ('UNSIGNED-PAYLOAD', hashlib.sha256(body).hexdigest())
    auth.payload = lambda _: sent_hash
    date = request.context['timestamp'] = request.headers['x-amz-date']
    age = datetime.now(UTC) - datetime.strptime(date + '+0000', '%Y%m%dT%H%M%SZ%z')
    assert timedelta() <= age < timedelta(minutes=5) or not is_now
    canonical = auth.canonical_request(request)
    signature = auth.signature(auth.string_to_sign(request, canonical), request)
    auth._inject_signature_to_request(request, signature)
    assert value(head, b'authorization').decode() == request.headers['authorization']


TEXT = st.text(st.one_of(
    st.sampled_from("aZ0-_.~ !$&'()*+,;=:@/?%<>\"\\^`{|}[]éሴ😀"),
    st.characters(exclude_categories=('Cc', 'Cs'))), max_size=12)
PATHS = st.lists(st.one_of(TEXT, st.sampled_from(
    ['', '.', '..', '%2F', '%2f', '%20', '%', '%zz', '%FF', '%e2%82%AC', 'a%2Fb'])), max_size=5)
# These are in the one form that is sent, so they are signed without being taken apart.
PLAIN = st.lists(st.sampled_from(['a', 'a-b.c_d~e', '%20', '%C3%A9', '0', '..', '']), max_size=5)
QUERIES = st.lists(st.sampled_from(
    ['uploads', 'a=', 'a=1', 'a=%2F', 'a-b=2', 'a%20b=2', 'b=~', 'a=0', 'A=', 'acl']), max_size=5)
VALUES = st.text(st.sampled_from('a0 ",;=\té'), max_size=12)
NAMES = st.sampled_from(['x-a', 'X-A', 'X-Amz-Meta-B', 'x-%b', 'Date', 'User-Agent', 'Connection',
                         'Accept-Encoding', 'Via', 'Cache-Control', 'Range', 'Content-Type'])


def without_fragment(text: str) -> str:
    return text.replace('#', '')


@pytest.fixture(scope='module')
def runner():
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        yield runner


@pytest.mark.parametrize('service', ['s3', 'execute-api'])
def test_random_requests_are_signed_as_botocore_does(runner, service):
    script = Answering(OK)
    server = runner.run(Server(script).__aenter__())
    request, close = Pool()
    signed_request = signed(request, credentials, service, 'eu-west-2')

    async def send(*args, **kwargs):
        code, _, body = await signed_request(*args, **kwargs)
        assert (code, await buffered(body)) == (b'200', b'ok')
        return script.heads.pop(), script.bodies.pop()

    @given(
        method=st.sampled_from([b'GET', b'PUT', b'POST', b'DELETE', b'PATCH']),
        path=st.one_of(PATHS, PLAIN), query=st.one_of(st.none(), TEXT, QUERIES.map('&'.join)),
        params=st.lists(st.tuples(TEXT, st.one_of(TEXT, st.lists(TEXT), st.integers()))),
        headers=st.lists(st.tuples(NAMES, VALUES), max_size=6), content=st.binary())
    @settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None,
              suppress_health_check=list(HealthCheck))
    def check(method, path, query, params, headers, content):
        path = without_fragment('/' + '/'.join(path)).replace('?', '')
        query = None if query is None else without_fragment(query)
        headers = [(name.encode(), field.encode()) for name, field in headers
                   if name != 'Connection' or field == 'a']
        head, body = runner.run(send(
            method, server.origin + path + ('' if query is None else '?' + query),
            params=params or (), headers=headers, body=streamed(content)))
        assert body == content
        check_signature(head, body, service)

        sent_path, _, sent_query = head.split(b' ')[1].decode().partition('?')
        assert urllib.parse.unquote_to_bytes(sent_path) == urllib.parse.unquote_to_bytes(path)
        if service != 's3':
            assert sent_path.count('/') == path.count('/')
        assert urllib.parse.parse_qsl(sent_query, keep_blank_values=True) == [
            *urllib.parse.parse_qsl(query or '', keep_blank_values=True),
            *urllib.parse.parse_qsl(
                urllib.parse.urlencode(params, doseq=True), keep_blank_values=True)]

    try:
        check()
    finally:
        runner.run(close())
        runner.run(server.__aexit__(None, None, None))


def headers_of(send, url, **kwargs):
    """The URL and the fields that are sent, without the date."""
    _, sent, kwargs = step(send(b'GET', url, **kwargs))
    assert kwargs['params'] == ()
    return sent, kwargs['headers']


@pytest.mark.parametrize('service', ['s3', 'execute-api'])
def test_a_url_in_the_form_that_is_sent_is_signed_as_one_that_is_taken_apart(
        service, monkeypatch):
    monkeypatch.setattr(lowhaio_aws_sigv4, 'time', lambda: 0)
    origin = 'http://a.example:8080'
    warm = signed(sent_by, credentials, service, 'eu-west-2')
    headers_of(warm, origin)

    def check(url):
        cold = signed(sent_by, credentials, service, 'eu-west-2')
        assert headers_of(warm, url) == headers_of(cold, url), url

    # Each byte, as it is and encoded, wherever it may stand.
    texts = [*map('%{:02X}'.format, range(256)), *map('%{:02x}'.format, range(256)),
             *(chr(byte) for byte in range(0x20, 0x7f) if byte != 0x23), '', '%', 'é', '%2', '&&']
    for text in texts:
        for place in ('/a{0}b', '/?{0}', '/?b=2&a{0}c={0}&a=1'):
            check(origin + place.format(text))
    for target in ('', '?', '?a', '?a=/b', '?a=//', '/?', '/??', '/?&', '/?=', '/?a&', '/?a&&b',
                   '/?a==', '/?a=b=c', '/?a=&=', '//', '/?/', '/a?/'):
        check(origin + target)

    @given(path=PLAIN, query=st.one_of(st.none(), QUERIES))
    @settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None)
    def check_random(path, query):
        check(origin + '/' + '/'.join(path) + ('' if query is None else '?' + '&'.join(query)))

    check_random()


@pytest.mark.parametrize('url, reason', [
    ('http://a.example/\n', 'url must start with'), ('http://a.example/?a=\n', 'url must start'),
    ('http://a.example/#', 'url must not have a "#"'),
    ('http://a.example/?a#b', 'url must not have a "#"'),
    ('http://a.example/\ud800', 'surrogates not allowed')])
def test_what_is_refused_is_refused_of_an_origin_that_is_known_too(url, reason):
    send = signed(sent_by, credentials, 's3', 'eu-west-2')
    for _ in range(2):
        with pytest.raises(HttpConnectionError, match=re.escape(reason)):
            step(send(b'GET', url))
        step(send(b'GET', 'http://a.example/'))


@pytest.mark.parametrize('service, target, params, sent', [
    pytest.param('s3', '', (), '/', id='empty-path'),
    pytest.param('s3', '/a b/%7e/%2F/+', (), '/a%20b/~///%2B', id='s3-path'),
    pytest.param('s3express', '/a b//../%2F', (), '/a%20b//..//', id='s3express-path'),
    pytest.param('es', '/a b/%7e/%2F/+', (), '/a%20b/~/%2F/%2B', id='path'),
    pytest.param('s3', '/a//../b/.', (), '/a//../b/.', id='s3-dots'),
    pytest.param('es', '/a//../b/.', (), '/a//../b/.', id='dots-are-kept'),
    pytest.param('s3', '?b=1+2&a&&c=%2b/', (), '/?b=1%202&a&c=%2B%2F', id='query'),
    pytest.param('s3', '?a', {'b': ['x y', '+']}, '/?a&b=x%20y&b=%2B', id='query-and-params'),
    pytest.param('s3', '?', {'b': ''}, '/?b=', id='params'),
    pytest.param('s3', '?a=b=c', (), '/?a=b%3Dc', id='equals-in-a-value'),
])
@on_loops
async def test_the_target_is_sent_in_one_form(service, target, params, sent):
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        await signed(request, credentials, service, 'eu-west-2')(
            b'GET', server.origin + target, params=params)
    assert script.lines == ['GET ' + sent]
    check_signature(script.heads[0], b'', service)


# A server decodes what is sent, and encodes it again. So what is signed is that form of it, which
# botocore leaves as it is. The path of another service than S3 is only encoded once more.
TARGETS = [
    ('s3', b'/a[b]|{c}', b'/a%5Bb%5D%7C%7Bc%7D'),
    ('s3', b'/a//../b/%7e/%2f#', b'/a//../b/~//%23'),
    ('s3', b'/\xc3\xa9/\xff+', b'/%C3%A9/%FF%2B'),
    ('s3', b'/?b=1+[2]&a&&c=%7e/', b'/?b=1%20%5B2%5D&a&c=~%2F'),
    ('s3', b'/?a=b=\xff', b'/?a=b%3D%FF'),
    ('s3', b'ORIGIN/a|b?c', b'/a%7Cb?c'),
    ('s3', b'ORIGIN?c', b'/?c'),
    ('es', b'/a[b]|{c}', b'/a[b]|{c}'),
    ('es', b'/a//../b/%7e/%2f', b'/a//../b/%7e/%2f'),
    ('es', b'/\xc3\xa9+', '/é+'.encode()),
    ('es', b'/?b=1+[2]&a', b'/?b=1%20%5B2%5D&a'),
    ('es', b'ORIGIN/a|b', b'/a|b'),
    ('es', b'ORIGIN', b'/'),
]


@pytest.mark.parametrize('service, target, as_signed', TARGETS)
@on_loops
async def test_a_target_is_sent_as_it_is_and_signed_as_a_server_reads_it(
        service, target, as_signed):
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        target = target.replace(b'ORIGIN', server.origin.encode())
        await signed(request, credentials, service, 'eu-west-2')(
            b'PUT', server.url + 'other?d', target=target, body=streamed(b'abc'))
    [head] = script.heads
    assert head.startswith(b'PUT ' + target + b' HTTP/1.1\r\n')
    check_signature(head.replace(b' ' + target, b' ' + as_signed, 1), b'abc', service)


@pytest.mark.parametrize('service', ['s3', 'es'])
def test_a_target_is_signed_with_each_of_its_bytes(service, monkeypatch):
    monkeypatch.setattr(lowhaio_aws_sigv4, 'time', lambda: 0)
    send = signed(sent_by, credentials, service, 'eu-west-2')
    seen = set()
    for byte in range(0x80, 0x100):
        *_, kwargs = step(send(b'GET', 'http://a.example/', target=b'/' + bytes((byte,))))
        seen.add(dict(kwargs['headers'])[b'authorization'])
    assert len(seen) == 128


@pytest.mark.parametrize('target, params, reason', [
    (b'*', (), 'signing a request for s3 in eu-west-2 failed: ValueError: target must have a '
     'path, or be http:// or https:// and a host'),
    ('/', (), 'signing a request for s3 in eu-west-2 failed: TypeError: target must be bytes, '
     'got str'),
    (b'/a b', (), 'refused: '), (b'/', {'a': 'b'}, 'refused: '),
])
@on_loops
async def test_a_target_that_can_not_be_signed_or_sent_is_refused(target, params, reason):
    async with pool() as request:
        with pytest.raises(HttpConnectionError, match=reason) as info:
            await signed(request, credentials, 's3', 'eu-west-2')(
                b'GET', 'http://127.0.0.1:1/', params=params, target=target)
    assert isinstance(info.value.__cause__, (TypeError, ValueError))


@pytest.mark.parametrize('target', [
    b'http://b.example/c', b'http://127.0.0.1/', b'https://127.0.0.1:PORT/', b'c', b'?c'])
@on_loops
async def test_a_target_that_names_another_origin_is_not_signed(target, caplog):
    caplog.set_level(logging.INFO, 'lowhaio_aws_sigv4')
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        target = target.replace(b'PORT', b'%d' % server.port)
        for origin in (None, server.origin, '*'):
            await signed(request, credentials, 's3', 'eu-west-2', origin=origin)(
                b'GET', server.url, target=target)
    for head in script.heads:
        assert head == b'GET %b HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n\r\n' % (target, server.port)
    assert [record.getMessage() for record in caplog.records] == [
        f'A request to {server.origin} is not signed: its target names another origin'] * 3


@pytest.mark.parametrize('url, host', [
    ('http://Example.COM', b'example.com'),
    ('HTTP://example.com.:80/', b'example.com'),
    ('http://example.com:/', b'example.com'),
    ('http://example.com:443/', b'example.com:443'),
    ('https://example.com:0443/', b'example.com'),
    ('https://example.com:80?a', b'example.com:80'),
    ('http://bücher.example/', b'xn--bcher-kva.example'),
    ('http://BÜCHER.example.:81/', b'xn--bcher-kva.example:81'),
    ('http://faß.example/', b'xn--fa-hia.example'),
    ('http://[FE80::1%25eth0]:81/', b'[fe80::1]:81'),
])
def test_the_host_is_canonical(url, host):
    send = signed(sent_by, credentials, 's3', 'eu-west-2')
    # The second time, it is remembered.
    for _ in range(2):
        *_, kwargs = step(send(b'GET', url))
        assert kwargs['headers'][0] == (b'host', host)


@on_loops
async def test_the_host_of_the_headers_is_signed_if_there_is_one():
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        await signed(request, credentials, 's3', 'eu-west-2')(
            b'GET', server.url, headers=((b'a', b'b'), (b'Host', b'other:1')))
        await signed(request, credentials, 's3', 'eu-west-2')(b'GET', server.url)
    assert value(script.heads[0], b'host') == b'other:1'
    assert value(script.heads[1], b'host') == b'127.0.0.1:%d' % server.port
    check_signature(script.heads[0].replace(b'Host', b'host'), b'', 's3')
    check_signature(script.heads[1], b'', 's3')


@on_loops
async def test_what_is_rewritten_on_the_way_is_sent_and_not_signed():
    """A gateway may ask for other codings, and say what it is."""
    script = Answering(OK)
    sent = [*(name.encode() for name in REWRITTEN), b'baggage', b'keep-alive', b'User-Agent',
            b'traceparent', b'x-amzn-trace-id']
    async with Server(script) as server, pool() as request:
        await signed(request, credentials, 's3', 'eu-west-2')(
            b'GET', server.url, headers=(
                (b'Range', b'bytes=1-'), *((name, b'a') for name in sent),
                (b'cache-control', b'no-store')))
    [head] = script.heads
    assert (b'SignedHeaders=cache-control;host;range;x-amz-content-sha256;x-amz-date,'
            in value(head, b'authorization'))
    assert [value(head, name) for name in sent] == [b'a'] * len(sent)
    check_signature(head, b'', 's3')


# --------------------------------------------------------------------- where credentials go


async def journey(origins, **options):
    """The heads of requests that go to these origins."""
    script = Answering(OK)
    async with Server(script) as server:
        connecting = connecting_to(http=server.port)
        async with pool(get_connection=connecting) as request:
            send = signed(request, credentials_with_token, 's3', 'eu-west-2', **options)
            for origin in origins:
                _, _, body = await send(b'GET', origin + '/a b?c=+')
                await buffered(body)
    return script.heads


async def credentials_with_token():
    return 'AKID', 'secret', ((b'x-amz-security-token', b'token'),)


HERE_AND_THERE = ('http://a.example', 'HTTP://A.EXAMPLE.:80', 'http://a.example:81',
                  'http://b.example', 'http://x.a.example', 'http://y.x.a.example',
                  'http://xa.example', 'http://axexample')


@pytest.mark.parametrize('origin, signed_ones', [
    (None, [0, 1]),
    ('http://a.example', [0, 1]),
    ('http://A.example.:80/', [0, 1]),
    ('http://a.example:81', [2]),
    ('https://a.example', []),
    (['http://b.example', 'http://a.example:81'], [2, 3]),
    ({'http://b.example'}, [3]),
    ('http://*.a.example', [4, 5]),
    (('http://*.a.example', 'http://a.example'), [0, 1, 4, 5]),
    ('*', [0, 1, 2, 3, 4, 5, 6, 7]),
])
@pytest.mark.parametrize('body_hash', [None, 'UNSIGNED-PAYLOAD'])
def test_credentials_go_to_their_origins_only(origin, signed_ones, body_hash, runner, caplog):
    caplog.set_level(logging.INFO, 'lowhaio_aws_sigv4')
    heads = runner.run(journey(HERE_AND_THERE, origin=origin, body_hash=body_hash))
    assert [index for index, head in enumerate(heads) if b'authorization' in head] == signed_ones
    for index, head in enumerate(heads):
        if index in signed_ones:
            assert value(head, b'x-amz-security-token') == b'token'
        else:
            # The request is exactly as lowhaio sends it without the layer.
            assert head.startswith(b'GET /a%20b?c=+ HTTP/1.1\r\nhost: ')
            assert head.count(b'\r\n') == 3
    assert [record.getMessage() for record in caplog.records] == [
        f'A request to {("http://a.example" if index == 1 else HERE_AND_THERE[index])} is not '
        'signed: it is not the origin of signed(…)'
        for index in range(len(HERE_AND_THERE)) if index not in signed_ones]
    assert 'a b' not in caplog.text


@on_loops
async def test_where_it_is_not_signed_a_body_has_its_length_all_the_same():
    async def body():
        yield b'a'
        yield b'b'

    script = Answering(OK)
    async with Server(script) as server:
        async with pool(get_connection=connecting_to(http=server.port)) as request:
            send = signed(request, credentials, 's3', 'x', origin='http://b.example')
            await send(b'PUT', 'http://a.example/', body=body)
            await send(b'PUT', 'http://a.example/', body=streamed(b'abc'))
            await send(b'PUT', 'http://a.example/')
            await send(b'PUT', 'http://a.example/', body=body,
                       headers=((b'Content-Length', b'2'),))
            await send(b'PUT', 'http://a.example/', body=streamed(b'0\r\n\r\n'),
                       headers=((b'transfer-encoding', b'chunked'),))
    assert script.bodies == [b'ab', b'abc', b'', b'ab', b'0\r\n\r\n']
    assert [values_of(head, b'content-length') for head in script.heads] == [
        [b'2'], [b'3'], [b'0'], [b'2'], []]
    assert not any(b'amz' in head or b'authorization' in head for head in script.heads)


@pytest.mark.parametrize('origin, message', [
    ('example.com', 'url must start with http:// or https:// and a host'),
    ('https://example.com/path', 'origin must be a scheme and a host'),
    ('https://example.com?a', 'origin must be'), ('https://example.com#a', 'origin must be'),
    ('https://*example.com', 'origin must be'), ('https://a.*.com', 'origin must be'),
    (('https://example.com', 'x'), 'url must start'), (1, 'int'), ((1,), 'int'),
])
def test_an_origin_that_is_none_fails_at_once(origin, message):
    with pytest.raises((TypeError, ValueError), match=message):
        signed(print, credentials, 's3', 'x', origin=origin)


# ------------------------------------------------------------------------------------- bodies


@on_loops
async def test_a_body_is_sent_with_its_length_and_hash():
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        send = signed(request, credentials, 's3', 'eu-west-2')
        await send(b'PUT', server.url, body=streamed(b'abc'))
        await send(b'PUT', server.url, body=streamed(b'abc'),
                   headers=((b'Content-Length', b'3'),))
        await send(b'PUT', server.url, body=streamed(b''))
        await send(b'PUT', server.url)
        await send(b'PUT', server.url, body=empty_async_iterator, body_args=(), body_kwargs={})
    assert script.bodies == [b'abc', b'abc', b'', b'', b'']
    assert [value(head, b'content-length') for head in script.heads] == [
        b'3', b'3', b'0', b'0', b'0']
    for head, body in zip(script.heads, script.bodies, strict=True):
        check_signature(head, body, 's3')


@pytest.mark.parametrize('body_hash', [None, 'UNSIGNED-PAYLOAD'])
@on_loops
async def test_that_there_is_no_content_is_said_where_there_could_be_some(body_hash):
    script = Answering(OK)
    methods = (b'PUT', b'POST', b'PATCH', b'GET', b'HEAD', b'DELETE', b'OPTIONS')
    async with Server(script) as server, pool(keep_alive_timeout=0) as request:
        send = signed(request, credentials, 's3', 'eu-west-2', body_hash=body_hash)
        for method in methods:
            await send(method, server.url)
        await send(b'PUT', server.url, headers=((b'Content-Length', b'0'),))
    assert [value(head, b'content-length') for head in script.heads] == [
        b'0', b'0', b'0', None, None, None, None, b'0']
    for head in script.heads:
        check_signature(head, b'', 's3')


@pytest.mark.parametrize('seconds, least, most', [(0, 0, 3), (0.0015, 5, 30), (0.003, 10, 50)])
@on_loops
async def test_what_is_in_memory_is_sent_as_it_is(seconds, least, most, monkeypatch):
    """It is neither copied nor written to a file, and other tasks get turns every 2 ms."""
    async def count():
        nonlocal counted
        while True:
            await asyncio.sleep(0)
            counted += 1

    async def sink(method, url, **kwargs):
        sent.append(kwargs)
        return b'200', (), None

    counted, sent = 0, []
    monkeypatch.setattr(tempfile, '_get_candidate_names', None)
    # These go by from one look at the clock to the next.
    monkeypatch.setattr(lowhaio_aws_sigv4, 'monotonic', itertools.count(0, seconds).__next__)
    data = bytes(16 * 2 ** 20)
    body = streamed(data)
    task = asyncio.create_task(count())
    tracemalloc.start()
    try:
        send = signed(sink, credentials, 's3', 'eu-west-2')
        await send(b'PUT', 'http://a.example/', body=body)
        assert tracemalloc.get_traced_memory()[1] < 2 ** 20
    finally:
        tracemalloc.stop()
    task.cancel()
    assert least <= counted <= most
    assert sent[0]['body'] is body
    fields = dict(sent[0]['headers'])
    assert fields[b'x-amz-content-sha256'] == hashlib.sha256(data).hexdigest().encode()
    assert fields[b'content-length'] == b'%d' % len(data)


@on_loops
async def test_what_is_in_memory_takes_no_arguments():
    async with Server(Answering(OK)) as server, pool() as request:
        with pytest.raises(HttpConnectionError, match='TypeError'):
            await signed(request, credentials, 's3', 'eu-west-2')(
                b'PUT', server.url, body=streamed(b'abc'), body_args=iter((1,)))


@on_loops
async def test_a_large_body_is_not_held_in_memory():
    async def body(chunks, size):
        for _ in range(chunks):
            yield bytes(size)

    async def script(peer):
        head = await peer.read_head()
        left = int(value(head, b'content-length'))
        while left:
            left -= len(await peer.reader.read(65536))
        await peer.send(OK)

    async with Server(script) as server, pool() as request:
        send = signed(request, credentials, 's3', 'eu-west-2')
        tracemalloc.start()
        try:
            await send(b'PUT', server.url, body=body, body_args=(256,),
                       body_kwargs={'size': 2 ** 16})
            assert tracemalloc.get_traced_memory()[1] < 2 ** 23
        finally:
            tracemalloc.stop()


@on_loops
async def test_other_tasks_get_turns_while_a_body_is_hashed():
    async def count():
        nonlocal counted
        while True:
            await asyncio.sleep(0)
            counted += 1

    async def body():
        for _ in range(100):
            yield b'a'

    async def sink(method, url, **kwargs):
        seen.append(counted)
        return b'200', (), None

    counted, seen = 0, []
    task = asyncio.create_task(count())
    await signed(sink, credentials, 's3', 'eu-west-2')(b'PUT', 'http://a.example/', body=body)
    task.cancel()
    assert seen[0] >= 90


@on_loops
async def test_a_body_that_fails_while_it_is_hashed_is_closed():
    class Failing:
        is_closed = False

        def __aiter__(self):
            return self

        async def __anext__(self):
            raise KeyError('no content')

        async def aclose(self):
            self.is_closed = True

    chunks = Failing()
    with pytest.raises(HttpConnectionError, match='KeyError'):
        await signed(print, credentials, 's3', 'eu-west-2')(
            b'PUT', 'http://a.example/', body=lambda: chunks)
    assert chunks.is_closed


@on_loops
async def test_a_body_that_has_ended_is_not_signed_as_an_empty_one():
    chunks = streamed(b'abc')()
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        send = signed(request, credentials, 's3', 'eu-west-2')
        await send(b'PUT', server.url, body=lambda: chunks)
        with pytest.raises(HttpConnectionError, match='must return a new async iterator'):
            await send(b'PUT', server.url, body=lambda: chunks)
    assert script.bodies == [b'abc']


@on_loops
async def test_a_body_can_be_sent_again_by_what_is_below():
    calls = 0

    async def body():
        nonlocal calls
        calls += 1
        yield b'a' * 100000
        yield b'b'

    async def twice(method, url, **kwargs):
        await request(method, url, **kwargs)
        return await request(method, url, **kwargs)

    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        await signed(twice, credentials, 's3', 'eu-west-2')(b'PUT', server.url, body=body)
    assert script.bodies == [b'a' * 100000 + b'b'] * 2
    assert calls == 1


@on_loops
async def test_a_body_is_closed_when_the_request_is_cancelled():
    closed = []

    async def body():
        try:
            yield b'a'
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            closed.append(True)

    async with pool() as request:
        task = asyncio.create_task(signed(request, credentials, 's3', 'eu-west-2')(
            b'PUT', 'http://127.0.0.1:1/', body=body))
        await turns(5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert closed == [True]


@on_loops
async def test_a_body_may_be_any_async_iterator():
    class Body:
        left = 2

        def __aiter__(self):
            return self

        async def __anext__(self):
            if not self.left:
                raise StopAsyncIteration
            self.left -= 1
            return bytearray(b'a')

    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        send = signed(request, credentials, 's3', 'eu-west-2')
        await send(b'PUT', server.url, body=Body)
        await send(b'PUT', server.url, body=repeatable(Body, lambda chunks: Body()))
    assert script.bodies == [b'aa'] * 2


@on_loops
async def test_the_hash_of_a_body_can_be_given():
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        await signed(request, credentials, 's3', 'eu-west-2', body_hash='UNSIGNED-PAYLOAD')(
            b'PUT', server.url, headers=((b'content-length', b'3'),), body=streamed(b'abc'))
    check_signature(script.heads[0], b'abc', 's3')
    assert value(script.heads[0], b'x-amz-content-sha256') == b'UNSIGNED-PAYLOAD'


OF_ABC = hashlib.sha256(b'abc').hexdigest()


@pytest.mark.parametrize('of_all', [None, 'UNSIGNED-PAYLOAD', hashlib.sha256(b'a').hexdigest()])
@on_loops
async def test_the_hash_of_one_body_can_be_given_with_its_request(of_all):
    async def body():
        yield b'a'
        await arrived.wait()
        yield b'bc'

    async def script(peer):
        heads.append(await peer.read_head())
        bodies.append(await peer.read(1))
        arrived.set()
        bodies[-1] += await peer.read(2)
        await peer.send(OK)

    heads, bodies = [], []
    length = ((b'content-length', b'3'),)
    async with Server(script) as server, pool(keep_alive_timeout=0) as request:
        send = signed(request, credentials, 's3', 'eu-west-2', body_hash=of_all)
        for body_hash in ('UNSIGNED-PAYLOAD', OF_ABC):
            arrived = asyncio.Event()
            # The body is not read in advance.
            await send(b'PUT', server.url, headers=length, body=body, body_hash=body_hash)
            await send(b'PUT', server.url, body=streamed(b'abc'), body_hash=body_hash)
        await send(b'PUT', server.url, body=streamed(b'abc'), body_hash=None)
    assert bodies == [b'abc'] * 5
    assert [value(head, b'x-amz-content-sha256').decode() for head in heads] == [
        'UNSIGNED-PAYLOAD', 'UNSIGNED-PAYLOAD', OF_ABC, OF_ABC, of_all or OF_ABC]
    for head in heads[:4]:
        check_signature(head, b'abc', 's3')
    assert [values_of(head, b'content-length') for head in heads] == [[b'3']] * 5


def test_what_is_for_the_layer_is_not_passed_on():
    for url in ('http://a.example/', 'http://b.example/'):
        send = signed(sent_by, credentials, 's3', 'eu-west-2', origin='http://a.example')
        _, _, kwargs = step(send(b'GET', url, body_hash='UNSIGNED-PAYLOAD', on_signed=id, a=1))
        assert sorted(kwargs) == ['a', 'body', 'body_args', 'body_kwargs', 'headers', 'params']
        assert (b'UNSIGNED-PAYLOAD' in dict(kwargs['headers']).values()) == ('//a' in url)


NOT_A_HASH = [b'UNSIGNED-PAYLOAD', '', 'UNSIGNED', 'unsigned-payload', 'UNSIGNED-PAYLOAD\n',
              OF_ABC.upper(), OF_ABC[1:], OF_ABC + '0', 1]


@pytest.mark.parametrize('body_hash', NOT_A_HASH)
def test_a_hash_that_is_none_is_refused(body_hash):
    message = (r"body_hash must be a str such as 'UNSIGNED-PAYLOAD', or of 64 hexadecimal digits "
               rf'in lower case, got {re.escape(repr(body_hash))}\Z')
    with pytest.raises(ValueError, match=r'\A' + message):
        signed(sent_by, credentials, 's3', 'x', body_hash=body_hash)
    with pytest.raises(HttpConnectionError, match=message) as info:
        step(signed(sent_by, credentials, 's3', 'x')(
            b'GET', 'http://a.example/', body_hash=body_hash))
    assert type(info.value.__cause__) is ValueError


# -------------------------------------------------------------- what is signed with a request


def test_a_signature_tells_what_more_is_signed_with(monkeypatch):
    """As for the chunks of a body, whose signatures begin with that of the request."""
    monkeypatch.setattr(lowhaio_aws_sigv4, 'time', lambda: 1_440_938_160.9)
    seen = []
    _, _, kwargs = step(signed(sent_by, credentials, 's3', 'eu-west-2')(
        b'PUT', 'http://a.example/', on_signed=seen.append))
    [signature] = seen
    fields = dict(kwargs['headers'])
    assert signature.date == fields[b'x-amz-date'] == b'20150830T123600Z'
    assert signature.scope == b'20150830/eu-west-2/s3/aws4_request'
    assert fields[b'authorization'].endswith(b'Signature=' + signature.value)
    assert repr(signature) == '<Signature of 20150830T123600Z for ' \
        '20150830/eu-west-2/s3/aws4_request>'

    auth = botocore.auth.SigV4Auth(
        botocore.credentials.Credentials('AKID', 'secret'), 's3', 'eu-west-2')
    request = botocore.awsrequest.AWSRequest()
    request.context['timestamp'] = signature.date.decode()
    for text in (b'', b'AWS4-HMAC-SHA256-PAYLOAD\n', 'é'.encode() * 1000):
        assert signature.sign(text) == auth.signature(text.decode(), request).encode()


def test_each_request_that_is_signed_is_told_of_before_it_is_sent():
    async def failing(method, url, **kwargs):
        assert len(seen) == 1
        raise KeyError('not sent')

    seen = []
    send = signed(failing, credentials, 's3', 'x', origin='http://a.example')
    with pytest.raises(KeyError):
        step(send(b'PUT', 'http://a.example/', on_signed=seen.append))
    with pytest.raises(KeyError):
        step(send(b'PUT', 'http://b.example/', on_signed=seen.append))
    assert len(seen) == 1


def test_nothing_is_sent_if_who_is_told_raises():
    with pytest.raises(HttpConnectionError, match='signing a request for s3 in x failed: Zero'):
        step(signed(sent_by, credentials, 's3', 'x')(
            b'PUT', 'http://a.example/', on_signed=lambda signature: 1 / 0))


# -------------------------------------------------------------------- credentials and headers


@on_loops
async def test_credentials_are_asked_for_each_request_and_add_headers():
    async def credentials():
        tokens.append(b'token-%d' % len(tokens))
        return 'AKID', 'secret', [(b'X-Amz-Security-Token', tokens[-1])]

    tokens = []
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        send = signed(request, credentials, 's3', 'eu-west-2')
        for _ in range(2):
            await send(b'GET', server.url, headers=iter((
                (b'x-amz-security-token', b'mine'), (b'Authorization', b'mine'),
                (b'X-Amz-Date', b'mine'), (b'X-AMZ-Content-SHA256', b'mine'), (b'a', b'1'),
                (b'User-Agent', b'x'), (b'A', b' 2  3 '))))
    assert tokens == [b'token-0', b'token-1']
    for head, token in zip(script.heads, tokens, strict=True):
        assert value(head, b'x-amz-security-token') == token
        assert values_of(head, b'a') == [b'1', b'2  3 ']
        assert (b'SignedHeaders=a;host;x-amz-content-sha256;x-amz-date;x-amz-security-token,'
                in value(head, b'authorization'))
        check_signature(head, b'', 's3')


class Clock:
    """Counts seconds since 1970 where the layer asks for the time."""

    def __init__(self, monkeypatch):
        self.seconds = 1_440_938_160
        monkeypatch.setattr(lowhaio_aws_sigv4, 'time', lambda: self.seconds)


def check_sent(send, secret='secret'):
    """Send a request, and check its signature against botocore's."""
    method, url, kwargs = step(send(b'GET', 'http://a.example/a?b'))
    lines = b''.join(b'%b: %b\r\n' % field for field in kwargs['headers'])
    check_signature(b'GET /a?b HTTP/1.1\r\n' + lines + b'\r\n', b'', 's3', secret, is_now=False)
    return dict(kwargs['headers'])[b'x-amz-date']


def test_a_key_is_used_for_its_secret_and_day_only(monkeypatch):
    async def changing():
        return 'AKID', secret, ()

    clock = Clock(monkeypatch)
    send = signed(sent_by, changing, 's3', 'eu-west-2')
    dates = []
    for secret in ('secret', 'another', 'another', 'secret'):
        for seconds in (0, 0.5, 1, 24 * 3600, -3600):
            clock.seconds += seconds
            dates.append(check_sent(send, secret))
    assert dates[:5] == [b'20150830T123600Z', b'20150830T123600Z', b'20150830T123601Z',
                         b'20150831T123601Z', b'20150831T113601Z']


def test_a_layer_keeps_one_key_and_the_module_none():
    async def changing():
        return 'AKID', secret, ()

    def keys():
        gc.collect()
        return sum(isinstance(found, SigningKey) for found in gc.get_objects())

    before = keys()
    send = signed(sent_by, changing, 's3', 'eu-west-2')
    for index in range(3):
        secret = f'secret-{index}'
        step(send(b'GET', 'http://a.example/'))
        assert keys() == before + 1
    del send
    assert keys() == before


def test_many_origins_and_many_names_are_not_remembered():
    send = signed(sent_by, credentials, 's3', 'eu-west-2', origin='*')

    def use(start, number):
        for index in range(start, start + number):
            _, _, kwargs = step(send(
                b'GET', f'http://{index:06}.example/', headers=((b'x-%06d' % index, b''),)))
            assert kwargs['headers'][0] == (b'host', b'%06d.example' % index)

    use(0, 600)
    tracemalloc.start()
    try:
        use(600, 300)
        held, _ = tracemalloc.get_traced_memory()
        use(1000, 1000)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < held + 100_000
    finally:
        tracemalloc.stop()


def test_the_headers_alone():
    assert list(inspect.signature(aws_sigv4_headers).parameters) == [
        'access_key_id', 'secret_access_key', 'pre_auth_headers', 'service', 'region', 'host',
        'method', 'path', 'params', 'body_hash']
    for service, path, target in (('s3', '/a b', '/a%20b'), ('es', '/a%20b', '/a%20b')):
        for extra in ((), ((b'Host', b'example.com'),)):
            fields = aws_sigv4_headers(
                'AKID', 'secret', ((b'x-a', b'1'), *extra), service, 'eu-west-2', 'example.com',
                'GET', path, (('b', ' '), ('a', ('1', '0'))), EMPTY_HASH)
            assert [name for name, _ in fields] == [
                b'authorization', b'x-amz-date', b'x-amz-content-sha256', b'x-a',
                *(name for name, _ in extra)]
            lines = b''.join(b'%b: %b\r\n' % field for field in fields if field[0] != b'Host')
            check_signature(
                b'GET %b?b=%%20&a=1&a=0 HTTP/1.1\r\nhost: example.com\r\n%b\r\n' % (
                    target.encode(), lines), b'', service)


# ------------------------------------------------------------------------------ URLs of keys

# Some of these keys can be names of files. The others cannot, or are the name of another file.
KEYS = json.loads((HERE / 'keys.json').read_text(encoding='utf-8'))


@pytest.mark.parametrize('bucket_url', [
    'https://a.s3.eu-west-2.amazonaws.com', 'https://a.s3.eu-west-2.amazonaws.com/',
    'http://[::1]:9000/bucket', 'http://[::1]:9000/bucket/', 'http://a.example/b/..'])
def test_the_url_of_an_object_has_each_byte_of_its_key(bucket_url):
    send = signed(sent_by, credentials, 's3', 'eu-west-2')
    for key in (*KEYS['like files'], *KEYS['unlike files'], '\n', '\r\n', '\0', '\x85', '\u2028'):
        url = object_url(bucket_url, key)
        prefix = bucket_url.removesuffix('/') + '/'
        assert url.startswith(prefix)
        rest = url.removeprefix(prefix)
        assert urllib.parse.unquote_to_bytes(rest) == key.encode()
        # All bytes but these are encoded, in capitals, as the docs of S3 call "URI encode".
        assert re.fullmatch('(?:[A-Za-z0-9._~/-]|%[0-9A-F]{2})+', rest)
        # So signing does not change it.
        assert step(send(b'GET', url))[1] == url


@pytest.mark.parametrize('bucket_url, key, message', [
    ('a.example', 'a', 'url must start with'), ('http://u:p@a.example', 'a', 'without userinfo'),
    ('http://a.example/\n', 'a', 'no control characters'),
    ('http://a.example?b', 'a', 'bucket_url must not have a query or a fragment'),
    ('http://a.example/#b', 'a', 'bucket_url must not have'),
    ('http://a.example', '', 'key must be a str that is not empty'),
    ('http://a.example', b'a', 'key must be a str'), ('http://a.example', '\ud800', 'surrogate'),
])
def test_what_has_no_url_is_refused(bucket_url, key, message):
    with pytest.raises(ValueError, match=message):
        object_url(bucket_url, key)


# ----------------------------------------------------------------------------- several regions


def signed_by_awscrt(method, target, fields, service, date):
    """The fields of a request that is signed for all regions."""
    is_s3 = service == 's3'
    config = awscrt.auth.AwsSigningConfig(
        algorithm=awscrt.auth.AwsSigningAlgorithm.V4_ASYMMETRIC, region='*', service=service,
        credentials_provider=awscrt.auth.AwsCredentialsProvider.new_static('AKID', 'secret'),
        date=datetime.strptime(date.decode() + '+0000', '%Y%m%dT%H%M%SZ%z'),
        use_double_uri_encode=not is_s3, should_normalize_uri_path=not is_s3,
        signed_body_value=dict(fields)[b'x-amz-content-sha256'].decode(),
        signed_body_header_type=(
            awscrt.auth.AwsSignedBodyHeaderType.X_AMZ_CONTENT_SHA_256))
    ours = (b'authorization', b'x-amz-date', b'x-amz-region-set', b'x-amz-content-sha256')
    request = awscrt.http.HttpRequest(method.decode(), target, awscrt.http.HttpHeaders([
        (name.decode(), field.decode()) for name, field in fields if name not in ours]))
    request = awscrt.auth.aws_sign_request(request, config).result(10)
    return {name.lower().encode(): field.encode() for name, field in request.headers}


@pytest.mark.parametrize('service', ['s3', 'execute-api'])
def test_random_requests_are_signed_for_regions_as_awscrt_does(service, monkeypatch):
    @given(
        method=st.sampled_from([b'GET', b'PUT']), path=PLAIN, query=QUERIES,
        headers=st.lists(st.tuples(st.sampled_from(['x-a', 'x-b', 'Range']),
                                   st.text('a0=-', min_size=1)), unique_by=lambda pair: pair[0]),
        seconds=st.integers(1_000_000_000, 4_000_000_000))
    @settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None)
    def check(method, path, query, headers, seconds):
        monkeypatch.setattr(lowhaio_aws_sigv4, 'time', lambda: seconds)
        target = '/' + '/'.join(path) + ('?' + '&'.join(query) if query else '')
        seen = []
        send = signed_for_regions(sent_by, credentials, service)
        _, url, kwargs = step(send(
            method, 'http://a.example' + target, on_signed=seen.append,
            headers=tuple((name.encode(), field.encode()) for name, field in headers)))
        fields = dict(kwargs['headers'])
        assert url == 'http://a.example' + target
        assert fields[b'x-amz-region-set'] == b'*'
        theirs = signed_by_awscrt(
            method, target, kwargs['headers'], service, fields[b'x-amz-date'])

        # A signature is another one each time, so both are checked by the same public key.
        texts = []
        monkeypatch.setattr(RegionsKey, 'sign', lambda key, text: texts.append((key, text)) or b'')
        step(send(method, url, headers=tuple(
            (name.encode(), field.encode()) for name, field in headers)))
        monkeypatch.undo()
        [(key, text)] = texts
        for found in (fields, theirs):
            start, _, signature = found[b'authorization'].partition(b'Signature=')
            assert start == theirs[b'authorization'].partition(b'Signature=')[0]
            key.private.public_key().verify(
                bytes.fromhex(signature.decode()), text, ec.ECDSA(SHA256()))
        assert seen[0].value == fields[b'authorization'].partition(b'Signature=')[2]

    check()


@pytest.mark.parametrize('regions', ['*', 'eu-west-1', 'eu-west-1,us-*'])
def test_the_regions_are_sent(regions):
    send = signed_for_regions(sent_by, credentials, 's3', regions, origin='http://a.example')
    _, _, kwargs = step(send(
        b'GET', 'http://a.example/', headers=((b'X-Amz-Region-Set', b'mine'),)))
    assert [pair for pair in kwargs['headers'] if pair[0].lower() == b'x-amz-region-set'] == [
        (b'x-amz-region-set', regions.encode())]
    _, _, kwargs = step(send(b'GET', 'http://b.example/'))
    assert kwargs['headers'] == ()


@pytest.mark.parametrize('regions', [b'*', '', 'a,', 'a b', 1])
def test_regions_that_are_none_are_refused(regions):
    with pytest.raises(ValueError, match="regions must be a str such as .*, got "):
        signed_for_regions(sent_by, credentials, 's3', regions)


def test_several_regions_need_a_package(monkeypatch):
    monkeypatch.setitem(sys.modules, 'cryptography.hazmat.primitives.asymmetric', None)
    with pytest.raises(ImportError):
        signed_for_regions(sent_by, credentials, 's3')


# ------------------------------------------------------------------------------ presigned URLs

# What botocore signs with a URL, unlike this layer, if it is given.
OURS = st.sampled_from(['x-a', 'X-Amz-Meta-B', 'Content-Type', 'x-amz-checksum-sha256', 'Range',
                        'x-amz-content-sha256', 'If-Match'])


class Presigner:
    """botocore's, for a request of this method and these fields."""

    def __init__(self, service, token, method, expires, headers):
        auth = botocore.auth.S3SigV4QueryAuth if service == 's3' else botocore.auth.SigV4QueryAuth
        self.auth = auth(botocore.credentials.Credentials('AKID', 'secret', token), service,
                         'eu-west-2', expires)
        self.method = method.decode()
        self.headers = headers

    def request(self, url):
        request = botocore.awsrequest.AWSRequest(self.method, url)
        for name, field in self.headers:
            request.headers[name] = field
        return request

    def presigned(self, url):
        request = self.request(url)
        self.auth.add_auth(request)
        return request.url

    def signature(self, url):
        """The signature of a URL that has all but that."""
        request = self.request(url)
        request.context['timestamp'] = amz_pairs(url)['X-Amz-Date']
        return self.auth.signature(self.auth.string_to_sign(
            request, self.auth.canonical_request(request)), request)


def pairs_of(url):
    return sorted(url.partition('?')[2].split('&'))


def amz_pairs(url):
    return {name: field for name, field in urllib.parse.parse_qsl(url.partition('?')[2])
            if name.startswith('X-Amz-')}


@pytest.mark.parametrize('service', ['s3', 'execute-api'])
def test_random_urls_are_presigned_as_botocore_does(service, monkeypatch):
    @given(
        method=st.sampled_from([b'GET', b'PUT', b'POST', b'DELETE', b'HEAD']),
        path=st.one_of(PATHS, PLAIN), query=st.one_of(st.none(), TEXT, QUERIES.map('&'.join)),
        params=st.lists(st.tuples(TEXT, st.one_of(TEXT, st.lists(TEXT), st.integers()))),
        headers=st.lists(st.tuples(OURS, VALUES), max_size=6), token=st.one_of(st.none(), TEXT),
        expires=st.integers(1, 604800), seconds=st.integers(1_000_000_000, 4_000_000_000))
    @settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None)
    def check(method, path, query, params, headers, token, expires, seconds):
        async def with_token():
            return 'AKID', 'secret', (
                () if not token else ((b'x-amz-security-token', token.encode()),))

        monkeypatch.setattr(lowhaio_aws_sigv4, 'time', lambda: seconds + 0.5)
        monkeypatch.setattr(botocore.auth, 'get_current_datetime',
                            lambda: datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None))
        path = without_fragment('/' + '/'.join(path)).replace('?', '')
        given = 'https://a.example:8443' + path + (
            '' if query is None else '?' + without_fragment(query))
        url = step(presigned(
            given, with_token, service, 'eu-west-2', method=method, expires=expires,
            params=params, headers=[(name.encode(), field.encode()) for name, field in headers]))

        # It is the URL that a signed request would have, and what botocore adds to that.
        _, sent, _ = step(signed(sent_by, credentials, service, 'eu-west-2')(
            method, given, params=params))
        assert url.startswith(sent + ('&' if '?' in sent else '?') + 'X-Amz-Algorithm=')
        presigner = Presigner(service, token or None, method, expires, headers)
        rest, _, signature = url.partition('&X-Amz-Signature=')
        assert signature == presigner.signature(rest)
        # botocore loses all but the first of several values.
        if len({pair.partition('=')[0] for pair in pairs_of(sent)}) == len(pairs_of(sent)):
            theirs = presigner.presigned(sent)
            assert url.partition('?')[0] == theirs.partition('?')[0]
            # It writes a name without a value with a "=", which is signed in either case.
            assert [pair if '=' in pair else pair + '=' for pair in pairs_of(url)] == \
                pairs_of(theirs)

    check()


@on_loops
async def test_a_presigned_url_is_all_that_a_request_needs(monkeypatch):
    clock = Clock(monkeypatch)
    asked = []

    async def with_token():
        asked.append(clock.seconds)
        return 'AKID', 'secret', iter(((b'x-amz-security-token', b'a+b/c='),))

    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        url = await presigned(
            server.origin + '/a b?versionId=1', with_token, 's3', 'eu-west-2', method=b'PUT',
            expires=60, params={'x-id': 'Put Object'},
            headers=iter(((b'Content-Type', b'text/plain'),)))
        code, _, _ = await request(b'PUT', url, headers=(
            (b'content-type', b'text/plain'), (b'content-length', b'3')), body=streamed(b'abc'))
    assert (code, len(asked)) == (b'200', 1)
    [line] = script.lines
    assert re.fullmatch(
        r'PUT /a%20b\?versionId=1&x-id=Put%20Object&X-Amz-Algorithm=AWS4-HMAC-SHA256&'
        r'X-Amz-Credential=AKID%2F20150830%2Feu-west-2%2Fs3%2Faws4_request&'
        r'X-Amz-Date=20150830T123600Z&X-Amz-Expires=60&X-Amz-SignedHeaders=content-type%3Bhost&'
        r'X-Amz-Security-Token=a%2Bb%2Fc%3D&X-Amz-Signature=[0-9a-f]{64}', line)
    assert 'secret' not in line


def presign(url='http://a.example/', service='s3', **kwargs):
    return step(presigned(url, kwargs.pop('credentials', credentials), service, 'eu-west-2',
                          **kwargs))


def test_fields_of_credentials_become_parameters():
    async def of_a_session():
        return 'AKID', 'secret', ((b'x-amz-s3session-token', b'a'), (b'X-AMZ-B', b'/'))

    url = presign(service='s3express', credentials=of_a_session)
    assert '&X-Amz-S3session-Token=a&X-Amz-B=%2F&X-Amz-Signature=' in url


def test_the_host_is_signed_as_it_is_sent(monkeypatch):
    Clock(monkeypatch)
    url = presign('HTTPS://A.example:443/a')
    assert url.startswith('HTTPS://A.example:443/a?X-Amz-Algorithm')
    assert amz_pairs(url) == amz_pairs(presign('https://a.example/a'))
    assert amz_pairs(url) != amz_pairs(presign('https://a.example:80/a'))
    assert amz_pairs(url) == amz_pairs(presign(
        'https://proxy.example/a', headers=((b'Host', b'a.example'),)))


def test_a_hash_of_the_content_can_be_signed_with_a_url(monkeypatch):
    Clock(monkeypatch)
    field = b'X-Amz-Content-SHA256', OF_ABC.encode()
    urls = {presign(service=service, headers=headers, method=b'PUT')
            for service in ('s3', 'es') for headers in ((), (field,))}
    assert len({amz_pairs(url)['X-Amz-Signature'] for url in urls}) == 4
    assert sum('SignedHeaders=host%3Bx-amz-content-sha256&' in url for url in urls) == 2


@pytest.mark.parametrize('expires', [1, 604800])
def test_a_url_is_good_for_a_second_to_a_week(expires):
    assert amz_pairs(presign(expires=expires))['X-Amz-Expires'] == str(expires)


@pytest.mark.parametrize('kwargs, error, message', [
    ({'expires': 0}, ValueError, 'expires must be an int, from 1 to 604800 seconds, which is 7 '
     'days, got 0'),
    ({'expires': 604801}, ValueError, 'expires must be an int, from 1 .*, got 604801'),
    ({'expires': 1.5}, ValueError, 'expires must be an int, from 1 .*, got 1.5'),
    ({'expires': True}, ValueError, 'expires must be an int, from 1 .*, got True'),
    ({'expires': timedelta(1)}, ValueError, 'expires must be an int, .*'),
    ({'method': 'GET'}, TypeError, 'method must be bytes, got str'),
    ({'service': 'a/b'}, ValueError, "service must be a str of .*, got 'a/b'"),
    ({'credentials': None}, TypeError, 'credentials must be a coroutine function, got NoneType'),
    ({'url': 'http://a.example/#a'}, ValueError, 'url must not have a "#", .*'),
    ({'url': 'http://user:password@a.example/'}, ValueError, 'url must start with .*'),
    ({'url': 'a.example'}, ValueError, 'url must start with .*'),
    ({'url': b'http://a.example/'}, TypeError, '.*bytes.*'),
    ({'url': 'http://a.example/?a&x-Amz-date=1'}, ValueError,
     'the query must not have what is added to it: x-amz-date'),
    ({'params': {'X-Amz-Signature': 'password'}}, ValueError,
     'the query must not have what is added to it: x-amz-signature'),
    ({'params': ((b'a', b'b'),)}, TypeError, 'params must be pairs of str, .*'),
    ({'headers': (('a', 'password'),)}, TypeError,
     'headers must be pairs of bytes, got a pair of str and str'),
    ({'headers': ((b'a', 'password'),)}, TypeError,
     'headers must be pairs of bytes, got a pair of bytes and str'),
    *(({'headers': ((name, b'password'),)}, ValueError, f'headers must not have {name.decode()}: '
       'it is not signed, so that who uses the URL could send any')
      for name in (b'User-Agent', b'Authorization', b'x-amz-date', b'accept-encoding')),
])
def test_what_can_not_be_presigned_is_refused(kwargs, error, message):
    with pytest.raises(error) as info:
        presign(**kwargs)
    assert re.fullmatch(message, str(info.value))
    assert 'password' not in str(info.value)


def test_errors_of_credentials_come_through():
    async def failing():
        raise error

    error = KeyError('none')
    with pytest.raises(KeyError) as info:
        presign(credentials=failing)
    assert info.value is error


# ------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize('url, kwargs, reason', [
    ('http://user:password@h/', {}, 'ValueError: url must start with http:// or https:// and'),
    ('ftp://h/', {}, 'ValueError: url must start with'),
    ('http:///', {}, 'ValueError: url must start with'),
    ('http://h/\n', {}, 'ValueError: url must start with'),
    ('http://h:1x/', {}, 'ValueError: url must start with'),
    ('http://h/\ud800', {}, 'UnicodeEncodeError'),
    (b'http://h/', {}, 'TypeError'),
    ('http://h/a#b', {}, 'ValueError: url must not have a "#", since what follows it is not sent. '
     'In a key it is "%23": object_url makes the URL of any key'),
    ('http://h/', {'params': 1}, 'TypeError'),
    ('http://h/', {'params': ((b'x-token', b'password'),)},
     'TypeError: params must be pairs of str, got pairs of bytes: were they headers?'),
    ('http://h/', {'headers': (('a', 'b'),)}, 'TypeError'),
    ('http://h/', {'body': lambda: 1}, 'TypeError'),
    ('http://h/', {'headers': ((b'Transfer-Encoding', b'chunked'),), 'body': streamed(b'')},
     'ValueError: headers must not have transfer-encoding when the body is signed'),
])
@on_loops
async def test_what_can_not_be_signed_is_refused(url, kwargs, reason):
    async with pool() as request:
        with pytest.raises(HttpConnectionError) as info:
            await signed(request, credentials, 's3', 'eu-west-2')(b'GET', url, **kwargs)
    assert str(info.value).startswith(
        f'signing a request for s3 in eu-west-2 failed: {reason}')
    assert type(info.value.__cause__).__name__ == reason.partition(':')[0]
    assert 'password' not in str(info.value)


@pytest.mark.parametrize('returned', [
    ('AKID', 'secret'), (b'AKID', 'secret', ()), ('AKID', b'secret', ()), KeyError('id')])
@on_loops
async def test_credentials_that_are_none_fail_before_anything_is_sent(returned):
    async def credentials():
        if isinstance(returned, Exception):
            raise returned
        return returned

    async with pool() as request:
        with pytest.raises(HttpConnectionError, match='signing a request for s3'):
            await signed(request, credentials, 's3', 'eu-west-2')(b'GET', 'http://127.0.0.1:1/')


@on_loops
async def test_an_exception_in_the_body_fails_before_anything_is_sent():
    async def body():
        yield b'a'
        raise error

    error = KeyError('mine')
    async with pool() as request:
        with pytest.raises(HttpConnectionError) as info:
            await signed(request, credentials, 's3', 'eu-west-2')(
                b'PUT', 'http://127.0.0.1:1/', body=body)
    assert info.value.__cause__ is error


@pytest.mark.parametrize('args, kwargs, message', [
    ((1, credentials, 's3', 'x'), {}, 'request must be a coroutine function, got int'),
    ((print, None, 's3', 'x'), {}, 'credentials must be a coroutine function, got NoneType'),
    ((print, credentials, b's3', 'x'), {}, "service must be a str of .*, got b's3'"),
    ((print, credentials, 's3', ''), {}, "region must be a str of .*, got ''"),
    ((print, credentials, 's3', 'x/'), {}, "region must be a str of .*, got 'x/'"),
    ((print, credentials, 's3', 'x'), {'body_hash': b'x'}, "body_hash must be a str .*"),
])
def test_bad_arguments_fail_at_once(args, kwargs, message):
    with pytest.raises((TypeError, ValueError), match=message):
        signed(*args, **kwargs)


@on_loops
async def test_other_keywords_are_passed_on():
    async def request(method, url, **kwargs):
        return kwargs

    kwargs = await signed(request, credentials, 's3', 'x')(b'GET', 'http://h/', other=1)
    assert kwargs['other'] == 1


def test_the_examples_of_the_readme(capsys):
    content = response(200, b'The content')
    script = Answering(response(200), content, content)
    with internet(script, '*.s3.eu-west-2.amazonaws.com'):
        for block in python_blocks(HERE / 'README.md'):
            run_block(block)
    assert capsys.readouterr().out == "200 b''\n200 b'The content'\n200 b'The content'\n"
    assert script.lines[:2] == ['PUT /my%20key%20%231', 'GET /my%20key%20%231']
    assert script.lines[2].startswith(
        'GET /my%20key%20%231?response-content-disposition='
        'attachment%3B%20filename%3D%22key.txt%22&X-Amz-Algorithm=AWS4-HMAC-SHA256&')
    assert script.bodies == [b'The content', b'', b'']
