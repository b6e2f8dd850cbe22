"""Tests of lowhaio_auth: what servers receive, and whether they accept it."""

import asyncio
import base64
import collections
import contextlib
import contextvars
import hashlib
import inspect
import json
import logging
import pathlib
import re
import secrets
import threading
import time

import flask
import flask_httpauth
import httpx
import pytest
from werkzeug.serving import make_server

import lowhaio_auth
from lowhaio import HttpConnectionError, HttpDataError, buffered, repeatable, streamed
from lowhaio_auth import basic, bearer, digest
from tests.harness import (
    OK,
    Answering,
    Server,
    connecting_to,
    context_for,
    get,
    internet,
    on_clock,
    on_loops,
    on_one_loop,
    pool,
    python_blocks,
    response,
    run_block,
    trusting,
    turns,
    value,
    values_of,
)

URL = 'http://a.example/'


@contextlib.asynccontextmanager
async def answering(*responses):
    """Yield a request to any http host, and the script that answers it."""
    script = Answering(*responses)
    async with Server(script) as server:
        async with pool(get_connection=connecting_to(http=server.port)) as request:
            yield request, script


def authorizations(script):
    return [value(head, b'authorization') for head in script.heads]


async def token():
    return 'abc.def-_~+/=='


def layers_state() -> list[str]:
    """What an error tracker or a debugger shows of the layer's objects that are in use now."""
    found = {}
    frame = inspect.currentframe()
    while frame is not None:
        found |= {id(each): each for each in frame.f_locals.values()
                  if type(each).__module__ == 'lowhaio_auth'}
        frame = frame.f_back
    return sorted(map(repr, found.values()))


# --------------------------------------------------------------------------- basic and bearer


@pytest.mark.parametrize('username, password, expected', [
    # RFC 7617 2 and 2.1.
    ('Aladdin', 'open sesame', b'Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=='),
    ('test', '123\u00a3', b'Basic dGVzdDoxMjPCow=='),
    ('', '', b'Basic Og=='),
    ('a', 'b:c', b'Basic YTpiOmM='),
    ('a' * 100, '', b'Basic ' + base64.b64encode(b'a' * 100 + b':')),
])
@on_loops
async def test_basic(username, password, expected):
    async with answering(OK) as (request, script):
        assert (await get(basic(request, username, password), URL))[2] == b'ok'
    assert authorizations(script) == [expected]


@on_loops
async def test_bearer_asks_for_a_token_for_each_request():
    async def get_token():
        tokens.append(f'token{len(tokens)}')
        return tokens[-1]

    tokens = []
    async with answering(OK) as (request, script):
        request = bearer(request, get_token)
        for _ in range(2):
            await get(request, URL)
    assert authorizations(script) == [b'Bearer token0', b'Bearer token1']


@pytest.mark.parametrize('outcome', [
    KeyError('secret'), HttpDataError('secret'), '', 'sec ret', 'secret\r\n', 'secr\u00e9t',
    '=secret', None, b'secret'])
@on_loops
async def test_without_a_token_nothing_is_sent(outcome):
    async def get_token():
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async with answering(OK) as (request, script):
        with pytest.raises(HttpConnectionError) as error:
            await bearer(request, get_token)(b'GET', URL + 'secret?secret')
    cause = error.value.__cause__
    assert str(error.value) == \
        f'GET http://a.example:80, get_token failed: {type(cause).__name__}'
    assert cause is outcome or isinstance(cause, (TypeError, ValueError))
    assert script.heads == []


@on_loops
async def test_the_function_that_returns_a_token_may_be_synchronous():
    async with answering(OK) as (request, script):
        await get(bearer(request, lambda: 'abc'), URL)
    assert authorizations(script) == [b'Bearer abc']


class Guard:
    """A server that accepts certain tokens, and a source of tokens."""

    def __init__(self, *good, refuse=b'no'):
        self.good = [b'Bearer ' + token for token in good]
        self.refuse = refuse
        self.asked = []

    def __call__(self, head, body):
        return OK if value(head, b'authorization') in self.good else response(401, self.refuse)

    def tokens(self, *tokens):
        """A function that returns these one after the other, and then the last one again."""
        left = list(tokens)

        async def get_token():
            self.asked.append(left[0])
            await asyncio.sleep(0)
            token = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(token, Exception):
                raise token
            return token

        return get_token


@on_loops
async def test_after_a_401_a_token_is_asked_for_once_more():
    guard = Guard(b'new')
    async with answering(guard) as (request, script):
        request = bearer(request, guard.tokens('old', 'new'))
        code, _, body = await request(
            b'PUT', URL, headers=iter([(b'content-length', b'3')]),
            body=lambda *args, **kwargs: streamed(b'%d%d%d' % (*args, *kwargs.values()))(),
            body_args=iter([1, 2]), body_kwargs=iter([('a', 3)]))
        assert (code, await buffered(body)) == (b'200', b'ok')
    assert authorizations(script) == [b'Bearer old', b'Bearer new']
    assert script.bodies == [b'123'] * 2
    assert set(script.connections) == {0}


@on_loops
async def test_a_second_401_is_returned():
    guard = Guard()
    async with answering(guard) as (request, script):
        request = bearer(request, guard.tokens('a', 'b', 'c'))
        code, _, body = await request(b'GET', URL)
        assert (code, await buffered(body)) == (b'401', b'no')
    assert authorizations(script) == [b'Bearer a', b'Bearer b']


@on_loops
async def test_a_401_is_returned_if_there_is_no_other_token():
    guard = Guard()
    async with answering(guard) as (request, script):
        request = bearer(request, guard.tokens('same'))
        chunks = streamed(b'abc')()
        code, headers, body = await request(
            b'PUT', URL, headers=((b'content-length', b'3'),), body=lambda: chunks)
        assert code == b'401'
        assert headers == ((b'content-length', b'2'),)
        assert await buffered(body) == b'no'
        assert await buffered(body) == b''
        assert body.trailers == ()
        _, _, body = await request(b'GET', URL)
        await body.aclose()
        assert await buffered(body) == b''
    assert len(script.heads) == 2


@on_loops
async def test_no_repr_shows_a_token():
    def get_token():
        shown.append(layers_state())
        return 'hidden'

    shown = []
    async with answering(Guard()) as (request, _):
        _, _, body = await bearer(request, get_token)(b'GET', URL)
    assert shown == [['<Tokens renewals=0 is_renewing=False>'],
                     ['<Tokens renewals=0 is_renewing=True>']]
    assert repr(body).startswith('<KeptBody 2 bytes held of <')
    assert await buffered(body) == b'no'
    assert repr(body).startswith('<KeptBody 0 bytes held of <')


@on_loops
async def test_a_401_with_a_long_body_is_not_kept_so_the_request_is_made_again():
    guard = Guard(refuse=bytes(2 ** 20))
    async with answering(guard) as (request, script):
        code, _, body = await bearer(request, guard.tokens('same'))(b'GET', URL)
        assert (code, await buffered(body)) == (b'401', bytes(2 ** 20))
    assert len(script.heads) == 2


@on_loops
async def test_many_tokens_that_are_refused_at_once_are_asked_for_once():
    guard = Guard(b'new')
    refused = []

    async def forget(token):
        refused.append(token)

    async with answering(guard) as (request, script):
        request = bearer(request, guard.tokens(*['old'] * 20, 'new'), on_refused=forget)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(get(request, URL)) for _ in range(20)]
    assert [task.result()[0] for task in tasks] == [b'200'] * 20
    assert guard.asked == ['old'] * 20 + ['new']
    assert refused == ['old']
    assert len(script.heads) == 40


@on_loops
async def test_a_token_that_is_refused_later_is_asked_for_again():
    guard = Guard(b'new')
    async with answering(guard) as (request, script):
        request = bearer(request, guard.tokens('old', 'old', 'old', 'new'))
        assert [(await get(request, URL))[0] for _ in range(2)] == [b'401', b'200']
    assert guard.asked == ['old', 'old', 'old', 'new']


@on_loops
async def test_nobody_gets_the_new_token_of_somebody_else():
    who = contextvars.ContextVar('who')
    versions = collections.Counter()

    def get_token():
        return f'{who.get()}{versions[who.get()]}'

    def forget(token):
        if token == get_token():
            versions[who.get()] += 1

    async def get_as(name):
        who.set(name)
        return (await get(request, URL))[0]

    guard = Guard(b'a1', b'b1')
    async with answering(guard) as (request, script):
        request = bearer(request, get_token, on_refused=forget)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(get_as(name)) for name in 'abab']
        assert [task.result() for task in tasks] == [b'200'] * 4
    assert sorted(authorizations(script)) == [
        b'Bearer ' + token for token in (b'a0', b'a0', b'a1', b'a1', b'b0', b'b0', b'b1', b'b1')]


@pytest.mark.parametrize('outcome, on_refused', [
    (KeyError('secret'), None), ('sec ret', None), ('new', lambda token: {}[token])])
@on_loops
async def test_without_another_token_there_was_an_answer(outcome, on_refused):
    guard = Guard()
    async with answering(guard) as (request, script):
        request = bearer(request, guard.tokens('secret', outcome), on_refused=on_refused)
        with pytest.raises(HttpDataError) as error:
            await request(b'GET', URL + 'secret')
    cause = error.value.__cause__
    assert isinstance(cause, (KeyError, ValueError))
    assert str(error.value) == (
        f'after a first answer, 401: GET http://a.example:80, get_token failed: '
        f'{type(cause).__name__}')
    assert error.value.response_started
    assert len(script.heads) == 1


@on_loops
async def test_a_body_that_can_be_made_once_is_not_sent_with_another_token():
    guard = Guard(b'new')
    chunks = streamed(b'abc')()
    async with answering(guard) as (request, script):
        request = bearer(request, guard.tokens('old', 'new'))
        with pytest.raises(HttpDataError, match='^after a first answer, 401: PUT .*body must '
                           'return a new async iterator at each call') as error:
            await request(b'PUT', URL, headers=((b'content-length', b'3'),), body=lambda: chunks)
    assert isinstance(error.value.__cause__, HttpConnectionError)
    assert len(script.heads) == 1


@pytest.mark.parametrize('layer', ['bearer', 'digest'])
@on_loops
async def test_what_can_not_be_sent_after_a_401_is_no_connection_error(layer):
    async def request(method, url, **kwargs):
        if asked:
            raise failure
        asked.append(url)
        return b'401', ((b'www-authenticate', b'Digest realm="r", nonce="n"'),), chunks()

    async def chunks():
        return
        yield

    asked = []
    failure = HttpConnectionError('no connection')
    failure.phase = 'connect'
    failure.reused = True
    tokens = iter(('old', 'new'))
    request_as = (bearer(request, lambda: next(tokens)) if layer == 'bearer'
                  else digest(request, 'user', 'password'))
    with pytest.raises(HttpDataError, match='^after a first answer, 401: no conn') as error:
        await request_as(b'GET', URL)
    assert error.value.__cause__ is failure
    assert (error.value.reused, error.value.phase) == (True, 'connect')
    assert error.value.response_started


@on_loops
async def test_the_connection_is_free_while_a_token_is_asked_for():
    async def get_token():
        if tokens:
            await get(pooled, 'http://login.example/')
        tokens.append(f'token{len(tokens)}')
        return tokens[-1]

    tokens = []
    script = Answering(response(401, bytes(2 ** 20)), response(200), OK)
    async with Server(script) as server:
        async with pool(get_connection=connecting_to(http=server.port), max_connections=1) as \
                pooled:
            assert (await get(bearer(pooled, get_token), URL))[2] == b'ok'


@on_loops
async def test_cancellation_while_the_token_is_asked_for():
    async def get_token():
        asked.set()
        await asyncio.Event().wait()

    asked = asyncio.Event()
    async with answering(OK) as (request, _):
        task = asyncio.create_task(bearer(request, get_token)(b'GET', URL))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


# -------------------------------------------------------------------------------- one origin

CHALLENGE = b'www-authenticate: Digest realm="r", nonce="n", qop="auth"'
LAYERS = {
    'basic': lambda request, **kwargs: basic(request, 'user', 'password', **kwargs),
    'bearer': lambda request, **kwargs: bearer(request, token, **kwargs),
    'digest': lambda request, **kwargs: digest(request, 'user', 'password', **kwargs),
}
each_layer = pytest.mark.parametrize('layer', LAYERS.values(), ids=LAYERS)


def asking(head, body):
    """Answer 401 to a request without credentials, so that digest sends what it would."""
    return OK if values_of(head, b'authorization') else response(401, b'no', CHALLENGE)


@each_layer
@pytest.mark.parametrize('origin, url, is_ours', [
    ('http://a.example', 'http://a.example/b?c', True),
    ('http://a.example/', 'http://a.example', True),
    ('http://a.example:80', 'HTTP://A.EXAMPLE.:0080/', True),
    ('HTTP://A.example:', 'http://a.example#f', True),
    ('http://[::1]:81', 'http://[::1]:81/', True),
    ('http://a.example', 'http://b.example/', False),
    ('http://a.example', 'http://a.example:81/', False),
    ('http://a.example', 'http://a.example.b.example/', False),
    ('http://a.example', 'http://b.a.example/', False),
    ('http://a.example', 'https://a.example/', False),
    ('http://a.example', 'https://a.example:80/', False),
    ('https://a.example', 'http://a.example/', False),
    ('https://a.example', 'http://a.example:443/', False),
    ('http://[::1]', 'http://[::2]/', False),
    ('http://a.example', 'http://a.example./', True),
    # Two names that IDNA 2003, or lower case, makes one of are still two names.
    ('http://fa\xdf.example', 'http://xn--fa-hia.example/', True),
    ('http://B\xdcCHER.example', 'http://xn--bcher-kva.example/', True),
    ('http://fa\xdf.example', 'http://fass.example/', False),
    ('http://\u0391\u03a3.example', 'http://\u03b1\u03c2.example/', False),
    ('http://b.example', 'http://a.example/?http://b.example/', False),
    ('http://b.example', 'http://a.example/#@b.example/', False),
])
@on_one_loop
async def test_credentials_go_to_one_origin(layer, origin, url, is_ours):
    script = Answering(asking)
    context = context_for('a.example')
    async with Server(script) as http, Server(script, context) as https, pool(
            get_connection=connecting_to(http=http.port, https=https.port),
            get_ssl_context=trusting) as request:
        code, _, body = await layer(request, origin=origin)(b'GET', url)
        await buffered(body)
    assert code == (b'200' if is_ours else b'401')
    assert any(authorizations(script)) is is_ours


# A target in absolute form names an origin itself, and a proxy passes it on to there.
ELSEWHERE = (b'http://b.example/', b'http://a.example:81/', b'https://a.example/', b'a.example:80',
             b'http://b@a.example/', b'a', b'?a')


@each_layer
@pytest.mark.parametrize('target, is_ours', [
    *((target, True) for target in (b'/', b'/[b]', b'//b.example/', b'*', b'http://a.example',
                                    b'HTTP://A.EXAMPLE.:80/[b]')),
    *((target, False) for target in ELSEWHERE)])
@on_one_loop
async def test_credentials_do_not_go_with_a_target_that_names_another_origin(
        layer, target, is_ours):
    async with answering(asking) as (request, script):
        for origin in ('http://a.example', None, 'http://b.example'):
            code, _, _ = await get(layer(request, origin=origin), URL, target=target)
            assert code == (b'200' if is_ours and origin != 'http://b.example' else b'401')
    assert {head.split(b' ')[1] for head in script.heads} == {target}


@each_layer
@on_loops
async def test_a_request_for_another_origin_does_not_count_as_the_first_one(layer):
    async with answering(asking) as (request, _):
        request = layer(request)
        codes = [(await get(request, url, target=target))[0] for url, target in (
            ('http://proxy.example/', b'http://a.example/'), (URL, None),
            ('http://proxy.example/', None))]
    assert codes == [b'401', b'200', b'401']


@each_layer
@on_loops
async def test_without_origin_it_is_that_of_the_first_request(layer):
    async with answering(asking) as (request, script):
        request = layer(request)
        # A request that is refused does not count as the first one.
        for refused in (b'http://b.example/', 'b.example', 'http://', 'http://u:p@b.example/',
                        'http://b.example:x/', 'http://\u2603\xdf.example/', 'ftp://b.example/',
                        None):
            with pytest.raises(HttpConnectionError, match='refused: url'):
                await request(b'GET', refused)
        codes = [(await get(request, url))[0] for url in (
            URL, 'http://b.example/', 'http://a.example:81/', URL + 'again')]
    assert codes == [b'200', b'401', b'401', b'200']
    assert {value(head, b'host') for head in script.heads
            if values_of(head, b'authorization')} == {b'a.example'}


@each_layer
@on_loops
async def test_a_request_with_an_authorization_of_its_own_is_not_touched(layer):
    async with answering(response(401, b'', CHALLENGE)) as (request, script):
        code, _, _ = await layer(request)(
            b'GET', URL, headers=iter([(b'AUTHORIZATION', b'Own'), (b'b', b'c')]))
    assert code == b'401'
    assert authorizations(script) == [b'Own']


@each_layer
@on_loops
async def test_what_the_caller_gave_is_passed_on(layer):
    async with answering(asking) as (request, script):
        _, _, body = await layer(request)(
            b'PUT', URL, params=(('p', 'q'),),
            headers=iter([(b'B', b'c'), (b'content-length', b'3'), (b'B', b'd')]),
            body=lambda *args, **kwargs: streamed(b'%d%d%d' % (*args, *kwargs.values()))(),
            body_args=iter([1, 2]), body_kwargs=iter([('a', 3)]))
        assert await buffered(body) == b'ok'
    assert set(script.lines) == {'PUT /?p=q'}
    assert set(script.bodies) == {b'123'}
    for head in script.heads:
        assert head.split(b'\r\n')[2:5] == [b'B: c', b'content-length: 3', b'B: d']


@each_layer
@pytest.mark.parametrize('headers', [5, (1,), ((b'a',),), (('a', 'b'),), ((b'a', None),)])
@on_loops
async def test_bad_headers_are_refused_as_ever(layer, headers):
    async with answering(OK) as (request, script):
        with pytest.raises(HttpConnectionError, match='refused: headers must'):
            await layer(request)(b'GET', URL, headers=headers)
    assert script.heads == []


@each_layer
@on_loops
async def test_other_keywords_are_passed_on(layer):
    async def request(method, url, **kwargs):
        assert kwargs['x'] == 1
        return b'200', (), body

    body = object()
    assert await layer(request)(b'GET', URL, x=1) == (b'200', (), body)


# -------------------------------------------------------------------------------------- digest


class Realm:
    """A server that answers 200 to a right proof of the password (RFC 7616)."""

    def __init__(self, algorithm=b'SHA-256', password=b'password', username=b'user',
                 realm=b'r', opaque=b'o', uses=100, qop=b'auth, auth-int'):
        self.algorithm = algorithm
        self.secret = (username, realm, password)
        self.opaque = opaque
        self.uses = uses
        # It is empty for RFC 2069.
        self.qop = qop
        self.sent_qop = b'auth' if b'auth' in qop.split(b', ') else qop
        self.left = {}
        self.fields = []

    def challenge(self, *more):
        nonce = b'n%d' % len(self.left)
        self.left[nonce] = self.uses
        realm = self.secret[1].replace(b'\\', b'\\\\').replace(b'"', b'\\"')
        qop = (b'qop="%b"' % self.qop,) if self.qop else ()
        return response(
            401, b'no', b'WWW-Authenticate: Digest ' + b', '.join((
                b'realm="%b"' % realm, b'nonce="%b"' % nonce, b'opaque="%b"' % self.opaque,
                b'algorithm=' + self.algorithm, *qop, *more)))

    def __call__(self, head, body):
        given = value(head, b'authorization')
        return OK if given is not None and self.is_proof(head, body, given) else self.challenge()

    def is_proof(self, head, body, given):
        scheme, _, rest = given.partition(b' ')
        pairs = re.findall(rb'(?:^|, )(\w+)=(?:"((?:[^"\\]|\\.)*)"|([^",]+))(?=,|$)', rest)
        fields = {name: re.sub(rb'\\(.)', rb'\1', text) or token for name, text, token in pairs}
        self.fields.append(fields)
        method, target, _ = head.split(b' ', 2)
        hash_name = {b'MD5': 'md5', b'SHA-256': 'sha256', b'SHA-512-256': 'sha512_256'}[
            self.algorithm.partition(b'-sess')[0]]

        def h(*parts):
            return hashlib.new(hash_name, b':'.join(parts)).hexdigest().encode()

        nonce, count, cnonce = fields[b'nonce'], fields.get(b'nc'), fields.get(b'cnonce')
        a1, a2 = h(*self.secret), [method, target]
        expected = {
            b'username': self.secret[0], b'realm': self.secret[1], b'nonce': nonce,
            b'uri': target, b'algorithm': self.algorithm, b'opaque': self.opaque}
        if b'-sess' in self.algorithm:
            a1 = h(a1, nonce, cnonce)
            expected[b'cnonce'] = cnonce
        if self.sent_qop == b'auth-int':
            a2.append(h(body))
        number = self.uses - self.left[nonce] + 1
        self.left[nonce] -= 1
        if self.qop:
            expected |= {b'qop': self.sent_qop, b'nc': b'%08x' % number, b'cnonce': cnonce,
                         b'response': h(a1, nonce, count, cnonce, self.sent_qop, h(*a2))}
        else:
            expected[b'response'] = h(a1, nonce, h(*a2))
        return number <= self.uses and scheme == b'Digest' and fields == expected


ALGORITHMS = [
    b'SHA-256', b'SHA-512-256', b'MD5', b'SHA-256-sess', b'SHA-512-256-sess', b'MD5-sess']


@pytest.mark.parametrize('algorithm', ALGORITHMS)
@pytest.mark.parametrize('qop', [b'auth, auth-int', b'auth-int', b''])
@on_loops
async def test_digest_answers_a_challenge_and_then_needs_none(algorithm, qop):
    realm = Realm(algorithm, qop=qop)
    async with answering(realm) as (request, script):
        request = digest(request, 'user', 'password')
        for _ in range(3):
            assert (await get(request, URL))[2] == b'ok'
    assert len(script.heads) == 4
    assert set(script.connections) == {0}
    if qop:
        assert [fields[b'nc'] for fields in realm.fields] == [
            b'00000001', b'00000002', b'00000003']
        assert len(realm.fields[0][b'cnonce']) == 32


@on_loops
async def test_no_repr_shows_the_password_or_the_proof():
    async def watched_request(method, url, **kwargs):
        shown.append(layers_state())
        return await request(method, url, **kwargs)

    shown = []
    async with answering(Realm(uses=1)) as (request, _):
        request_as = digest(watched_request, 'user', 'password')
        for _ in range(2):
            await get(request_as, URL)
    assert shown[0] == [
        '<Login last=None is_locked=False>', '<Turn count=0 overtaken=0 has_lock=False>']
    assert shown[2] == [
        "<Challenge SHA-256 qop=b'auth' count=2>",
        "<Login last=<Challenge SHA-256 qop=b'auth' count=2> is_locked=False>",
        '<Turn count=0 overtaken=0 has_lock=False>']


@pytest.mark.parametrize('algorithm, qop', [
    (b'SHA-256', b'auth, auth-int'), (b'MD5', b'auth, auth-int'), (b'SHA-256', b''), (b'MD5', b''),
    (b'SHA-256-sess', b'auth, auth-int'), (b'MD5-sess', b'auth, auth-int')])
@on_loops
async def test_another_client_proves_it_to_the_server_of_these_tests(algorithm, qop):
    realm = Realm(algorithm, qop=qop)
    async with Server(Answering(realm)) as server:
        # Without `verify`, it reads all certificates of authorities, for nothing.
        async with httpx.AsyncClient(
                auth=httpx.DigestAuth('user', 'password'), verify=False) as client:
            for _ in range(2):
                answer = await client.post(server.url, params={'a': 'b'}, content=b'abc')
                assert answer.content == b'ok'


@on_loops
async def test_with_auth_int_the_body_is_read_once_more():
    async def body(part):
        calls.append(part)
        yield part
        yield b''
        yield bytearray(b'c')

    calls = []
    async with answering(Realm(qop=b'auth-int')) as (request, script):
        request = digest(request, 'user', 'password')
        for _ in range(2):
            code, _, _ = await request(
                b'PUT', URL, headers=((b'content-length', b'3'),), body=body, body_args=(b'ab',))
            assert code == b'200'
    assert script.bodies == [b'abc'] * 3
    assert len(calls) == 5


class Chunks:
    """An async iterator without `aclose`."""

    def __init__(self, chunks):
        self.chunks = chunks

    def __aiter__(self):
        return self

    async def __anext__(self):
        return await anext(self.chunks)


@on_loops
async def test_a_body_that_can_not_be_closed_is_hashed_as_well():
    async with answering(Realm(qop=b'auth-int')) as (request, script):
        code, _, _ = await digest(request, 'user', 'password')(
            b'PUT', URL, headers=((b'content-length', b'3'),),
            body=repeatable(streamed(b'abc'), Chunks))
    assert code == b'200'


@on_loops
async def test_auth_int_is_not_for_a_body_with_framing():
    framing = ((b'Transfer-Encoding', b'chunked'),)
    why = (', refused: headers must not have transfer-encoding when the server asks for auth-int: '
           'what is hashed has no framing')
    async with answering(Realm(qop=b'auth-int')) as (request, script):
        request = digest(request, 'user', 'password')
        with pytest.raises(HttpDataError) as error:
            await request(b'PUT', URL, headers=framing, body=streamed(b'0\r\n\r\n'))
        assert str(error.value) == f'after a first answer, 401: PUT http://a.example:80{why}'
        assert isinstance(error.value.__cause__, HttpConnectionError)
        assert error.value.response_started
        assert (await get(request, URL))[2] == b'ok'
        count = len(script.heads)
        with pytest.raises(HttpConnectionError) as error:
            await request(b'PUT', URL, headers=framing, body=streamed(b'0\r\n\r\n'))
        assert str(error.value) == f'PUT http://a.example:80{why}'
        assert len(script.heads) == count


@pytest.mark.parametrize('chunk, cause, shown', [
    (lambda: {}['a'], KeyError, "'a'$"), (lambda: next(iter(())), RuntimeError, 'async gen'),
    (lambda: pathlib.Path('/dev/fd/x').read_bytes(), OSError, '.*No such'),
    (lambda: 'text', TypeError, 'Strings must'),
    (lambda: 1, TypeError, 'object supporting the buffer'),
    (lambda: (_ for _ in ()).throw(OSError), OSError, 'OSError$')])
@on_loops
async def test_a_body_that_can_not_be_hashed_is_an_error_before_anything_is_sent(
        chunk, cause, shown):
    async def body():
        try:
            yield b'a'
            yield chunk()
        finally:
            closed.append(chunk)

    closed = []
    async with answering(Realm(qop=b'auth-int')) as (request, script):
        request = digest(request, 'user', 'password')
        await get(request, URL)
        count = len(script.heads)
        with pytest.raises(HttpConnectionError, match=f'^PUT http://a.example:80, refused: {shown}'
                           ) as error:
            await request(b'PUT', URL, headers=((b'content-length', b'3'),), body=body)
        assert isinstance(error.value.__cause__, cause)
        assert closed == [chunk]
        assert len(script.heads) == count


@on_loops
async def test_digest_answers_anew_when_the_nonce_is_stale():
    async with answering(Realm(uses=2)) as (request, script):
        request = digest(request, 'user', 'password')
        codes = [(await get(request, URL))[0] for _ in range(4)]
    assert codes == [b'200'] * 4
    assert len(script.heads) == 6


@on_loops
async def test_digest_returns_the_second_401():
    async with answering(Realm()) as (request, script):
        request = digest(request, 'user', 'wrong')
        for _ in range(2):
            code, _, body = await request(b'GET', URL)
            assert code == b'401'
            assert await buffered(body) == b'no'
    assert len(script.heads) == 4


class Stale(Realm):
    """A server that says whether it is only the nonce that it refuses."""

    def __call__(self, head, body):
        given = value(head, b'authorization')
        if given is None:
            return self.challenge()
        return OK if self.is_proof(head, body, given) else self.challenge(b'stale=TRUE')


class OneNonce(Stale):
    """A server that knows only the nonce that it gave last."""

    def is_proof(self, head, body, given):
        is_last = b'nonce="n%d"' % (len(self.left) - 1) in given
        return super().is_proof(head, body, given) and is_last


REALMS = {
    'many-uses': Realm,
    'without-qop': lambda: Realm(qop=b''),
    'auth-int': lambda: Realm(qop=b'auth-int'),
    'one-use': lambda: Stale(uses=1),
    'one-nonce': OneNonce,
    'one-nonce-one-use': lambda: OneNonce(uses=1),
}


@pytest.mark.parametrize('realm', REALMS.values(), ids=REALMS)
@pytest.mark.parametrize('before', [0, 1])
@on_loops
async def test_many_log_in_at_once(realm, before, monkeypatch):
    monkeypatch.setattr(lowhaio_auth, 'LOGIN_TIMEOUT', 1000)
    async with answering(realm()) as (request, script):
        request = digest(request, 'user', 'password')
        for _ in range(before):
            await get(request, URL)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(get(request, URL)) for _ in range(20)]
        assert [task.result()[0] for task in tasks] == [b'200'] * 20
    # Each request is made without and with an answer, once more for each 401 to another one that
    # made its nonce stale, and once more if its nonce had been used already.
    assert len(script.heads) - before * 2 <= 20 * 6


@on_loops
async def test_it_is_an_answer_in_the_end_also_if_the_nonces_of_others_come_in_between(
        monkeypatch):
    monkeypatch.setattr(lowhaio_auth, 'LOGIN_TIMEOUT', 0)
    def answer(head, body):
        return response(401, b'no', CHALLENGE + b', stale=true')

    async def counted(method, url, **kwargs):
        urls.append(url)
        if url == URL and len(urls) > 1:
            # Another request gets a 401 while this one is on its way.
            await digested_request(b'GET', URL + 'other')
        return await request(method, url, **kwargs)

    urls = []
    async with answering(answer) as (request, script):
        digested_request = digest(counted, 'user', 'password')
        assert (await get(digested_request, URL))[0] == b'401'
    assert urls.count(URL) <= 1 + lowhaio_auth.MAX_CHALLENGES + lowhaio_auth.MAX_OVERTAKEN
    assert urls.count(URL) > 1 + lowhaio_auth.MAX_OVERTAKEN


@on_loops
async def test_a_request_made_by_the_body_of_one_that_logs_in_does_not_wait_for_it(monkeypatch):
    async def body():
        calls.append(1)
        if len(calls) == 3:
            assert (await get(request, URL + 'inner'))[0] == b'200'
        yield b'a'

    def twice_stale(head, body):
        visits[head.split()[1]] += 1
        return OK if visits[head.split()[1]] > 2 else response(
            401, b'', CHALLENGE + b', stale=true')

    monkeypatch.setattr(lowhaio_auth, 'LOGIN_TIMEOUT', 0.01)
    visits = collections.Counter()
    calls = []
    async with answering(twice_stale) as (request, script):
        request = digest(request, 'user', 'password')
        code, _, _ = await request(
            b'PUT', URL + 'outer', headers=((b'content-length', b'1'),), body=body)
    assert code == b'200'
    assert visits == {b'/outer': 3, b'/inner': 3}


@on_clock
async def test_whoever_is_overtaken_lets_the_next_one_log_in():
    async def request(method, url, **kwargs):
        attempts.append((url[-1], asyncio.get_running_loop().create_future()))
        return await attempts[-1][1]

    async def nothing():
        return
        yield

    async def refuse(*numbers):
        """Answer these attempts with a nonce each, and let the requests go on."""
        for number in numbers:
            nonce = CHALLENGE.replace(b'"n"', b'"n%d"' % number) + b', stale=true'
            name, _, value = nonce.partition(b': ')
            attempts[number][1].set_result((b'401', ((name.lower(), value),), nothing()))
            await turns(10)

    def begin(name):
        return asyncio.ensure_future(get(as_user, URL + name))

    attempts = []
    as_user = digest(request, 'user', 'password')
    tasks = [begin('a'), begin('b')]
    await turns(10)
    await refuse(0, 1)  # the first attempts of both, without an answer
    await refuse(2, 3)  # both have answered: a may log in, and b waits for it
    assert [name for name, _ in attempts] == ['a', 'b', 'a', 'b', 'a']
    tasks.append(begin('c'))
    await turns(10)
    await refuse(5, 4)  # c makes the nonce stale that a has answered
    assert [name for name, _ in attempts[6:]] == ['c', 'b']
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@pytest.mark.parametrize('is_known', [False, True])
@on_loops
async def test_a_nonce_that_is_stale_again_and_again_is_an_answer_in_the_end(is_known):
    def answer(head, body):
        if is_fresh.pop():
            return OK
        return response(401, b'no', CHALLENGE.replace(b'"n"', b'"n%d"' % len(script.heads))
                        + b', stale=true')

    is_fresh = [False] * 100 + [True, False] * is_known
    async with answering(answer) as (request, script):
        request = digest(request, 'user', 'password')
        if is_known:
            assert (await get(request, URL))[0] == b'200'
            script.heads.clear()
        code, _, body = await request(b'GET', URL)
        assert code == b'401'
        assert await buffered(body) == b'no'
    assert len(script.heads) == lowhaio_auth.MAX_CHALLENGES + 1


@pytest.mark.parametrize('algorithm', [b'SHA-256', b'MD5-sess'])
@on_loops
async def test_the_next_nonce_is_used(algorithm):
    def answer(head, body):
        given = value(head, b'authorization')
        if given is None:
            return response(401, b'', CHALLENGE + b', algorithm=' + algorithm)
        texts.append(given)
        return response(200, b'ok', b'Authentication-Info: qop=auth, nextnonce="next\\%d", nc=1'
                        % len(texts), b'authentication-info: nextnonce, nextnonce="')

    texts = []
    async with answering(answer) as (request, script):
        request = digest(request, 'user', 'password')
        for _ in range(3):
            await get(request, URL)
    assert [re.findall(rb'nonce="([^"]*)"|nc=(\w+)', text) for text in texts] == [
        [(nonce, b''), (b'', b'00000001'), (cnonce(texts[0]), b'')]
        for nonce in (b'n', b'next1', b'next2')]
    # The secret of a session is made with its first nonce.
    hash_name = 'md5' if b'MD5' in algorithm else 'sha256'

    def h(*parts):
        return hashlib.new(hash_name, b':'.join(parts)).hexdigest().encode()

    a1 = h(b'user', b'r', b'password')
    if b'sess' in algorithm:
        a1 = h(a1, b'n', cnonce(texts[0]))
    assert b'response="%b"' % h(a1, b'next2', b'00000001', cnonce(texts[0]), b'auth',
                                h(b'GET', b'/')) in texts[2]


def cnonce(text):
    return re.findall(rb'cnonce="([^"]*)"', text)[0]


@on_loops
async def test_digest_calls_the_body_function_again():
    async with answering(Realm()) as (request, script):
        for _ in range(2):
            await digest(request, 'user', 'password')(
                b'POST', URL, headers=((b'content-length', b'3'),), body=streamed(b'abc'))
    assert script.bodies == [b'abc'] * 4


def digested(request):
    return digest(request, 'user', 'password')


def borne(request):
    tokens = iter(('old', 'new'))
    return bearer(request, lambda: next(tokens))


each_again = pytest.mark.parametrize('again', [digested, borne])


def is_answered(head):
    return b'Digest' in head or b'Bearer new' in head


@each_again
@pytest.mark.parametrize('pieces', [
    (b'content-length: 2\r\n\r\n', b'no'),
    (b'content-length: 32768\r\n\r\n', bytes(32768)),
    (b'transfer-encoding: chunked\r\n\r\n', b'2\r\nno\r\n', b'0\r\n\r\n'),
])
@on_loops
async def test_the_connection_of_a_401_is_used_again(again, pieces):
    async def script(peer):
        await peer.read_head()
        await peer.send(b'HTTP/1.1 401 No\r\n' + CHALLENGE + b'\r\n')
        await peer.send(*pieces)
        assert is_answered(await peer.read_head())
        await peer.send(OK)

    async with Server(script) as server, pool() as request:
        assert (await get(again(request), server.url))[2] == b'ok'
        assert len(server.peers) == 1


@each_again
@pytest.mark.parametrize('length, sent', [(2 ** 20, 2 ** 20), (1000, 1)])
@on_loops
async def test_a_401_is_not_read_for_long(again, length, sent, monkeypatch):
    async def script(peer):
        if is_answered(await peer.read_head()):
            await peer.send(OK)
        else:
            await peer.send(b'HTTP/1.1 401 No\r\ncontent-length: %d\r\n%b\r\n\r\n' % (
                length, CHALLENGE))
            with contextlib.suppress(ConnectionError):
                await peer.send(bytes(sent))
            await peer.closed()
            closed.set()

    if sent < length:
        monkeypatch.setattr(lowhaio_auth, 'DRAIN_TIMEOUT', 0.01)
    closed = asyncio.Event()
    # With that of the pool alone, the test would not end.
    async with Server(script) as server, pool(socket_timeout=1000, max_connections=1) as request:
        assert (await get(again(request), server.url))[2] == b'ok'
        await closed.wait()
    assert asyncio.current_task().cancelling() == 0


@each_again
@on_loops
async def test_a_401_that_is_cut_off_is_answered(again):
    async def script(peer):
        if is_answered(await peer.read_head()):
            await peer.send(OK)
        else:
            await peer.send(b'HTTP/1.1 401 No\r\ncontent-length: 1000\r\n' + CHALLENGE
                            + b'\r\n\r\n')

    async with Server(script) as server, pool() as request:
        assert (await get(again(request), server.url))[2] == b'ok'


@pytest.mark.parametrize('url, params, target', [
    ('http://a.example', (), '/'),
    ('http://a.example?q', (), '/?q'),
    ('http://a.example#f', (), '/'),
    ('http://a.example/b#f', {'c': ['d', 'e']}, '/b?c=d&c=e'),
    ('http://a.example/?', {'c': '\u00e9 +'}, '/?c=%C3%A9+%2B'),
    ('http://a.example/?b', (('c', ''),), '/?b&c='),
    ('http://a.example/?b&', b'', '/?b&'),
    ('http://a.example/?b&', (('c', 1),), '/?b&c=1'),
    ('http://a.example/b c/\u00e9?"<>\\^`{|}', (), '/b%20c/%C3%A9?%22%3C%3E%5C%5E%60%7B%7C%7D'),
    ('http://a.example/%2f%0A%zz%0', (), '/%2f%0A%25zz%250'),
    ("http://a.example/~-._!$&'()*+,;=:@/?/?[]", (), "/~-._!$&'()*+,;=:@/?/?%5B%5D"),
])
@on_loops
async def test_digest_hashes_the_target_that_is_sent(url, params, target):
    async with answering(Realm()) as (request, script):
        assert (await get(digest(request, 'user', 'password'), url, params=params))[2] == b'ok'
    # lowhaio has encoded the first target, and the layer the second one.
    assert script.lines == [f'GET {target}'] * 2


@pytest.mark.parametrize('method, target', [
    (b'GET', b'/a[b]|{c}?d=[e]'), (b'GET', b'/%7e//../%2f'), (b'GET', b'/"a"\\b\xff'),
    (b'OPTIONS', b'*'), (b'GET', b'http://a.example/a|b')])
@pytest.mark.parametrize('qop', [b'auth', b''])
@on_loops
async def test_digest_hashes_a_target_as_it_is_given(method, target, qop):
    realm = Realm(qop=qop)
    async with answering(realm) as (request, script):
        request = digest(request, 'user', 'password')
        for _ in range(2):
            code, _, body = await request(method, URL + 'other?c', target=target)
            assert (code, await buffered(body)) == (b'200', b'ok')
    assert [head.partition(b' HTTP/')[0] for head in script.heads] == [
        method + b' ' + target] * 3
    assert [fields[b'uri'] for fields in realm.fields] == [target] * 2


@pytest.mark.parametrize('kwargs', [
    {'url': URL + '\n'}, {'url': URL + '\x85'}, {'url': URL + '\ud800'}, {'params': 5},
    {'params': ((b'x-api-key', b'secret'),)}, {'params': {b'x-api-key': b'secret'}},
    {'method': 'GET'}, {'method': b'G T'}, {'target': '/'}, {'target': b''},
    {'target': b'/a b'}, {'target': b'/', 'params': {'c': 'd'}}])
@on_loops
async def test_bad_arguments_are_refused_also_when_there_is_a_challenge(kwargs):
    async with answering(Realm()) as (request, script):
        request = digest(request, 'user', 'password')
        await get(request, URL)
        count = len(script.heads)
        with pytest.raises(HttpConnectionError, match=', refused: '):
            await request(**{'method': b'GET', 'url': URL, **kwargs})
        assert len(script.heads) == count


@pytest.mark.parametrize('username, password, realm, opaque', [
    ('user"\\', 'pass"\\word', b'a "quoted" \\ realm', b'o, p="q"'),
    ('J\u00e4s\u00f8n Doe', 'Secret, or not?', b'api@example.org', b''),
    ('', '', b'', b'='),
])
@on_loops
async def test_digest_quotes_what_it_sends(username, password, realm, opaque):
    server = Realm(username=username.encode(), password=password.encode(), realm=realm,
                   opaque=opaque.replace(b'"', b'\\"'))
    server.opaque, given = opaque, server.challenge
    server.challenge = lambda: given().replace(
        b'opaque="%b"' % opaque, b'opaque="%b"' % opaque.replace(b'"', b'\\"'))
    async with answering(server) as (request, _):
        assert (await get(digest(request, username, password), URL))[2] == b'ok'


@pytest.mark.parametrize('fields, algorithm', [
    ([b'Digest realm="r", nonce="n", qop="auth"'], None),
    ([b'digest REALM=r,NONCE=n,QOP=auth'], None),
    ([b'Digest realm = "r" , nonce =\t"n",qop= "auth-int , AUTH"'], None),
    ([b'Digest realm="r",nonce="n",algorithm=sha-256,qop="auth"'], b'sha-256'),
    ([b'Basic realm="x, Digest realm=y", Digest realm="r",nonce="n",qop="auth"'], None),
    ([b'Digest realm="r",nonce="n",qop="auth", Basic realm="x"'], None),
    ([b'Negotiate, Digest realm="r",nonce="n",qop="auth"'], None),
    ([b'Negotiate YWJj==, Digest realm="r",nonce="n",qop="auth"'], None),
    ([b'NTLM TlRM/a=, , Digest realm="r",nonce="n",qop="auth",'], None),
    ([b'x="y", Digest realm="r",nonce="n",qop="auth", realm="other"'], None),
    ([b'Basic realm="x"', b'Digest realm="r",nonce="n",qop="auth"'], None),
    # Of several challenges the best one is answered.
    ([b'Digest realm="r",nonce="n",algorithm=MD5,qop="auth"',
      b'Digest realm="r",nonce="n",algorithm=SHA-256,qop="auth"'], b'SHA-256'),
    ([b'Digest realm="r",nonce="n",algorithm=SHA-256,qop="auth", '
      b'Digest realm="r",nonce="n",algorithm=MD5,qop="auth"'], b'SHA-256'),
    ([b'Digest realm="r",nonce="n",algorithm=SHA-512,qop="auth", '
      b'Digest realm="r",nonce="n",algorithm=MD5-sess,qop="auth"'], b'MD5-sess'),
    ([b'Digest realm="r",nonce="n",algorithm=MD5,qop="auth"',
      b'Digest realm="r",nonce="n",algorithm=SHA-512-256,qop="auth"'], b'SHA-512-256'),
    ([b'Digest realm="r",nonce="n",algorithm=SHA-512-256,qop="auth"',
      b'Digest realm="r",nonce="n",algorithm="SHA-256-SESS",qop="auth"'], b'SHA-256-SESS'),
    ([b'Digest realm="x",nonce="x",qop="auth-conf"', b'Digest realm="r",nonce="n"'], None),
    # There may be empty members of the list, and missing commas.
    ([b'Digest realm="r",, nonce="n", ,qop="auth",'], None),
    ([b'Digest ,realm="r",nonce="n"'], None),
    ([b', ,Digest\t, realm="r" ,\t,nonce="n"'], None),
    ([b'Basic realm="x",,Digest realm="r",,nonce="n",,'], None),
    ([b'Digest realm="r" nonce="n" qop="auth"'], None),
    ([b'Digest realm="r", nonce="n", qop=""'], None),
    ([b'Digest realm=r, nonce=n, domain=/a/b=='], None),
    ([b'Negotiate, Basic realm=x, Digest realm="r", nonce="n", Bearer'], None),
    ([b'Digest realm="x", nonce="x', b'Digest realm="r", nonce="n"'], None),
])
@on_loops
async def test_digest_finds_its_challenge(fields, algorithm):
    lines = [b'www-authenticate: ' + field for field in fields]
    async with answering(response(401, b'', *lines), OK) as (request, script):
        assert (await get(digest(request, 'user', 'password'), URL))[2] == b'ok'
    sent = authorizations(script)[1]
    assert b', realm="r", nonce="n", uri="/", ' in sent
    assert re.findall(rb'algorithm=([^,]+)', sent) == ([algorithm] if algorithm else [])


@pytest.mark.parametrize('field', [
    b'x: y', b'www-authenticate: Basic realm="x"', b'www-authenticate:',
    b'www-authenticate: Digest', b'www-authenticate: realm="r", nonce="n", qop="auth"',
    b'www-authenticate: Digest realm="r", qop="auth"',
    b'www-authenticate: Digest nonce="n", qop="auth"',
    b'www-authenticate: Digest realm="r", nonce="n", qop="auth-conf"',
    b'www-authenticate: Digest realm="r", nonce="n", qop="auth", algorithm=SHA-512',
    b'www-authenticate: Digest realm="r", nonce="n", qop="auth", algorithm="\xff"',
    b'www-authenticate: Digest realm="r", nonce="n", qop="auth',
    b'www-authenticate: Digest realm="r", nonce="n", qop="',
    b'www-authenticate: Digest realm="r", nonce="n\\"',
    b'www-authenticate: Digest realm="r", nonce="n\\',
    b'proxy-authenticate: Digest realm="r", nonce="n", qop="auth"',
])
@on_loops
async def test_digest_returns_a_401_that_it_can_not_answer(field):
    async with answering(response(401, b'no', field)) as (request, script):
        code, _, body = await digest(request, 'user', 'password')(b'GET', URL)
        assert code == b'401'
        assert await buffered(body) == b'no'
    assert len(script.heads) == 1


@on_loops
async def test_digest_answers_only_401():
    async with answering(response(403, b'', CHALLENGE)) as (request, script):
        assert (await get(digest(request, 'user', 'password'), URL))[0] == b'403'
    assert len(script.heads) == 1


@on_loops
async def test_digest_refuses_other_algorithms_than_those_accepted():
    async with answering(Realm(b'MD5')) as (request, script):
        request = digest(request, 'user', 'password', algorithms=('SHA-256',))
        assert (await get(request, URL))[0] == b'401'
    assert len(script.heads) == 1


@pytest.mark.parametrize('algorithms, expected', [
    (('MD5', 'SHA-256'), b'algorithm=MD5,'), (('SHA-256', 'MD5'), b'algorithm=SHA-256,')])
@on_loops
async def test_the_first_of_the_algorithms_that_is_offered_is_used(algorithms, expected):
    challenge = b', '.join(b'Digest realm="r", nonce="n", opaque="o", qop="auth", algorithm='
                           + algorithm for algorithm in (b'MD5', b'SHA-256'))
    async with answering(response(401, b'', b'www-authenticate: ' + challenge), OK) as (
            request, script):
        await get(digest(request, 'user', 'password', algorithms=iter(algorithms)), URL)
    assert expected in authorizations(script)[1]


RFC_7616 = (
    'Mufasa', 'Circle of Life', '/dir/index.html', 'f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ',
    b'realm="http-auth@example.org", qop="auth, auth-int", algorithm=%b, '
    b'nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", '
    b'opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"')
RFC_2617 = (b'realm="testrealm@host.com", %bnonce="dcd98b7102dd2f0e8b11d0f600bfb0c093", '
            b'opaque="5ccc069c403ebaf9f0171e9517f40e41"')


@pytest.mark.parametrize('username, password, path, cnonce, challenge, expected', [
    (*RFC_7616[:4], RFC_7616[4] % b'MD5', b'8ca523f5e9506fed4657c9700eebdbec'),
    (*RFC_7616[:4], RFC_7616[4] % b'SHA-256',
     b'753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1'),
    # The example of 3.9.2, corrected by erratum 4897.
    ('J\u00e4s\u00f8n Doe', 'Secret, or not?', '/doe.json',
     'NTg6RKcb9boFIAS3KrFK9BGeh+iDa/sm6jUMp2wds69v',
     b'realm="api@example.org", qop="auth", algorithm=SHA-512-256, '
     b'nonce="5TsQWLVdgBdmrQ0XsxbDODV+57QdFR34I9HAbC/RVvkK", '
     b'opaque="HRPCssKJSGjCrkzDg8OhwpzCiGPChXYjwrI2QmXDnsOS", charset=UTF-8, userhash=true',
     b'3798d4131c277846293534c3edc11bd8a5e4cdcbff78b05db9d95eeb1cec68a5'),
    # RFC 2617 3.5.
    ('Mufasa', 'Circle Of Life', '/dir/index.html', '0a4f113b',
     RFC_2617 % b'qop="auth,auth-int", ', b'6629fae49393a05397450978507c4ef1'),
    # The example of RFC 2069 2.4, corrected by erratum 749.
    ('Mufasa', 'CircleOfLife', '/dir/index.html', '', RFC_2617 % b'',
     b'1949323746fe6a43ef61f9606e7febea'),
], ids=['7616-md5', '7616-sha-256', '7616-sha-512-256', '2617', '2069'])
@on_loops
async def test_digest_as_in_the_examples_of_the_rfcs(
        username, password, path, cnonce, challenge, expected, monkeypatch):
    monkeypatch.setattr(secrets, 'token_hex', lambda _: cnonce)
    async with answering(response(401, b'', b'WWW-Authenticate: Digest ' + challenge), OK) as (
            request, script):
        await get(digest(request, username, password), 'http://www.example.org' + path)
    sent = authorizations(script)[1]
    assert b'response="%b"' % expected in sent
    if b'userhash' in challenge:
        assert b'username="793263caabb707a56211940d90411ea4a575adeccb7e360aeb624ed06ece9b0b"' \
            in sent
        assert sent.endswith(b', userhash=true')
    if b'qop' not in challenge:
        assert not re.findall(rb'qop|nc=|cnonce', sent)


@on_loops
async def test_an_algorithm_that_python_does_not_have_is_not_offered(monkeypatch):
    def new(name, *args, **kwargs):
        if name == 'sha512_256':
            raise ValueError('unsupported hash type sha512_256')
        return hashlib_new(name, *args, **kwargs)

    hashlib_new = hashlib.new
    monkeypatch.setattr(hashlib, 'new', new)
    challenges = [b'www-authenticate: Digest realm="r", nonce="n", algorithm=' + algorithm
                  for algorithm in (b'SHA-512-256', b'MD5')]
    async with answering(response(401, b'', *challenges), OK) as (request, script):
        assert (await get(digest(request, 'user', 'password'), URL))[2] == b'ok'
    assert b'algorithm=MD5' in authorizations(script)[1]
    with pytest.raises(ValueError, match=r"has none of the algorithms \('SHA-512-256',\)"):
        digest(get, 'user', 'password', algorithms=('SHA-512-256',))


@pytest.mark.parametrize('field', [
    b'a' * 16000, b'a ' * 8000, b'a=' * 8000, b'a="' * 5000, b' ' * 16000, b'a' + b' ' * 16000,
    b'a=' + b' ' * 16000, b'a="' + b'\\' * 16000, b'Digest ' + b'a=b,' * 4000,
    b'a="' + b'\\"' * 8000, b'=' * 16000, b'"' * 16000, b'a= ' * 5000, b',' * 16000,
], ids=range(14))
@on_loops
async def test_the_longest_bad_field_takes_no_time(field):
    async def request(method, url, **kwargs):
        return b'401', ((b'www-authenticate', field),), None

    started = time.process_time()
    await digest(request, 'user', 'password')(b'GET', URL)
    # This is far more than it takes, and far less than quadratic time would be.
    assert time.process_time() - started < 0.5


# ------------------------------------------------------------------- a server of somebody else


@contextlib.contextmanager
def flask_server(auth, *ready):
    app = flask.Flask(__name__)
    app.secret_key = 'key'

    @app.route('/<path:path>', methods=['GET', 'POST'])
    @auth.login_required
    def index(path):
        return f'{auth.current_user() or auth.username()} {flask.request.full_path}'

    logging.getLogger('werkzeug').disabled = True
    server = make_server('127.0.0.1', 0, app)
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
    thread.start()
    try:
        yield f'http://127.0.0.1:{server.server_port}'
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize('password, expected', [
    ('pass\u00e9', b'200'), ('wrong', b'401')])
@on_loops
async def test_flask_accepts_basic(password, expected):
    auth = flask_httpauth.HTTPBasicAuth()
    auth.verify_password(lambda username, given: username if given == 'pass\u00e9' else None)
    with flask_server(auth) as origin:
        async with pool() as request:
            code, _, body = await get(basic(request, 'J\u00e4s\u00f8n', password), origin + '/a')
    assert code == expected
    assert (body.decode() == 'J\u00e4s\u00f8n /a?') is (code == b'200')


@on_loops
async def test_flask_accepts_bearer():
    auth = flask_httpauth.HTTPTokenAuth()
    auth.verify_token(lambda given: 'somebody' if given == 'abc.def-_~+/==' else None)
    with flask_server(auth) as origin:
        async with pool() as request:
            code, _, body = await get(bearer(request, token), origin + '/a')
    assert (code, body) == (b'200', b'somebody /a?')


@pytest.mark.parametrize('algorithm', ['MD5', 'MD5-Sess'])
@pytest.mark.parametrize('password, expected', [('password', b'200'), ('wrong', b'401')])
@on_loops
async def test_flask_accepts_digest(algorithm, password, expected):
    auth = flask_httpauth.HTTPDigestAuth(algorithm=algorithm)
    auth.get_password(lambda username: 'password')
    auth.generate_nonce(lambda: 'nonce')
    auth.verify_nonce(lambda nonce: nonce == 'nonce')
    auth.generate_opaque(lambda: 'opaque')
    auth.verify_opaque(lambda opaque: opaque == 'opaque')
    with flask_server(auth) as origin:
        async with pool() as request:
            request = digest(request, 'user', password)
            for _ in range(2):
                code, _, body = await get(request, origin + '/a b?c', params={'d': '\u00e9'})
                assert code == expected
    assert (body == b'user /a b?c&d=%C3%A9') is (code == b'200')


# ------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize('layer, args, kwargs', [
    (basic, (None, 'a', 'b'), {}),
    (basic, (get, b'a', 'b'), {}),
    (basic, (get, 'a', None), {}),
    (basic, (get, 'a:b', 'c'), {}),
    (basic, (get, 'a\n', 'b'), {}),
    (basic, (get, 'a', 'b\x7f'), {}),
    (basic, (get, 'a', '\ud800'), {}),
    (bearer, (None, token), {}),
    (bearer, (get, None), {}),
    (bearer, (get, 'token'), {}),
    (digest, (None, 'a', 'b'), {}),
    (digest, (get, b'a', 'b'), {}),
    (digest, (get, 'a', 'b\r\n'), {}),
    (digest, (get, 'a', 'b'), {'algorithms': ()}),
    (digest, (get, 'a', 'b'), {'algorithms': ('MD4',)}),
    (bearer, (get, token), {'on_refused': 'forget'}),
    (digest, (get, 'a', 'b'), {'algorithms': 'MD5'}),
    *((layer, args, {'origin': origin})
      for layer, args in ((basic, (get, 'a', 'b')), (bearer, (get, token)),
                          (digest, (get, 'a', 'b')))
      for origin in ('', 'a.example', '//a.example', 'ftp://a.example', 'http://',
                     'http://u:p@a.example', 'http://a.example/b', 'http://a.example?',
                     'http://a.example//', 'http://a.example#', b'http://a.example', 5)),
])
def test_a_bad_argument_fails_at_once(layer, args, kwargs):
    with pytest.raises((TypeError, ValueError)):
        layer(*args, **kwargs)


# -------------------------------------------------------------------------------- the README

BLOCKS = python_blocks(pathlib.Path(__file__).with_name('README.md'))


def website(head, body):
    if value(head, b'host') == b'login.example.com':
        return response(200, json.dumps({'access_token': 'abc', 'expires_in': 3600}).encode())
    given = value(head, b'authorization')
    if given is None:
        return Realm().challenge()
    return response(200, given.partition(b' ')[0])


@pytest.mark.parametrize('block, shown, requests', [
    (BLOCKS[0], "b'200' b'Basic'\n", 1),
    (BLOCKS[1], "b'200' b'Bearer'\n" * 2, 3),
    (BLOCKS[2], "b'200' b'Digest'\n" * 2, 3),
    (BLOCKS[3], "b'200' b'Digest'\n", 3),
], ids=['basic', 'bearer', 'digest', 'upload'])
def test_a_block_of_the_readme_runs_as_it_stands(block, shown, requests, capsys):
    script = Answering(website)
    with internet(script):
        run_block(block)
    assert capsys.readouterr().out == shown
    assert len(script.heads) == requests
    assert len(BLOCKS) == 4
    # The body of the upload is sent only once.
    assert [body for body in script.bodies if body] == [b'-' * 1024] * ('PUT' in block)


@pytest.mark.parametrize('good, requests', [(b'abc', 3), (b'new', 5)])
@on_loops
async def test_the_token_of_the_readme_is_fetched_again_when_it_is_refused(good, requests):
    def website(head, body):
        if value(head, b'host') == b'login.example':
            token = next(tokens)
            return response(200, json.dumps({'access_token': token, 'expires_in': 3600}).encode())
        return OK if value(head, b'authorization') == b'Bearer ' + good else response(401)

    names = {}
    exec(BLOCKS[1].partition('async def main')[0], names)
    tokens = iter(('abc', 'new'))
    async with answering(website) as (pooled, script):
        get_token, forget = names['fetched_token'](pooled, 'http://login.example/')
        request = bearer(pooled, get_token, on_refused=forget, origin='http://a.example')
        assert [(await get(request, URL))[0] for _ in range(2)] == [b'200'] * 2
    assert len(script.heads) == requests


@pytest.mark.parametrize('url, is_sent', [
    ('http://a.example/other', True),
    ('http://a.example?query', True),
    ('http://A.example:80/', True),
    ('http://a.example.other.example/', False),
    ('http://a.example:81/', False),
    ('https://a.example/', False),
])
@on_one_loop
async def test_a_url_that_begins_like_the_last_one_is_known_by_its_whole_authority(url, is_sent):
    async def answer(method, url, headers=(), **kwargs):
        sent.append([name for name, _ in headers])
        return b'200', (), None

    sent = []
    request = basic(answer, 'user', 'password')
    for each in 'http://a.example/', url, 'http://a.example/', url:
        await request(b'GET', each)
    assert sent == [[b'authorization'], [b'authorization'] * is_sent] * 2
