"""Tests of lowhaio_auth: what the servers see, and if they accept it."""

import asyncio
import base64
import contextlib
import hashlib
import json
import logging
import pathlib
import re
import secrets
import threading
import time

import flask
import flask_httpauth
import pytest
from harness import (
    OK,
    Answering,
    Server,
    connecting_to,
    get,
    internet,
    on_loops,
    pool,
    python_blocks,
    response,
    run_block,
    server_context,
    trusting_context,
    value,
    values_of,
)
from werkzeug.serving import make_server

import lowhaio_auth
from lowhaio import HttpConnectionError, HttpDataError, buffered, streamed
from lowhaio_auth import basic, bearer, digest

URL = 'http://a.example/'


@contextlib.asynccontextmanager
async def answering(*responses):
    """Yields a request to any http host, and the script that answers it."""
    script = Answering(*responses)
    async with Server(script) as server:
        async with pool(get_connection=connecting_to(http=server.port)) as request:
            yield request, script


def authorizations(script):
    return [value(head, b'authorization') for head in script.heads]


async def token():
    return 'abc.def-_~+/=='


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
    """401 to what has no authorization, so that digest shows what it would do."""
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
    ('http://b.example', 'http://a.example/?http://b.example/', False),
    ('http://b.example', 'http://a.example/#@b.example/', False),
])
@on_loops
async def test_credentials_go_to_one_origin(layer, origin, url, is_ours):
    script = Answering(asking)
    context = server_context('a.example')
    async with Server(script) as http, Server(script, context) as https, pool(
            get_connection=connecting_to(http=http.port, https=https.port),
            get_ssl_context=trusting_context) as request:
        code, _, body = await layer(request, origin=origin)(b'GET', url)
        await buffered(body)
    assert code == (b'200' if is_ours else b'401')
    assert any(authorizations(script)) is is_ours


@each_layer
@on_loops
async def test_without_origin_it_is_that_of_the_first_request(layer):
    async with answering(asking) as (request, script):
        request = layer(request)
        # What is refused is no request.
        for refused in (b'http://b.example/', 'b.example', 'http://', 'http://u:p@b.example/',
                        'http://b.example:x/', 'ftp://b.example/', None):
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
    """Answers those who prove that they know the password, as RFC 7616 has it."""

    def __init__(self, algorithm=b'SHA-256', password=b'password', username=b'user',
                 realm=b'r', opaque=b'o', uses=100):
        self.algorithm = algorithm
        self.secret = (username, realm, password)
        self.opaque = opaque
        self.uses = uses
        self.left = {}
        self.fields = []

    def challenge(self):
        nonce = b'n%d' % len(self.left)
        self.left[nonce] = self.uses
        realm = self.secret[1].replace(b'\\', b'\\\\').replace(b'"', b'\\"')
        return response(
            401, b'no', b'WWW-Authenticate: Digest realm="%b", nonce="%b", opaque="%b", '
            b'algorithm=%b, qop="auth, auth-int"' % (
                realm, nonce, self.opaque, self.algorithm))

    def __call__(self, head, body):
        given = value(head, b'authorization')
        return OK if given is not None and self.is_proof(head, given) else self.challenge()

    def is_proof(self, head, given):
        scheme, _, rest = given.partition(b' ')
        pairs = re.findall(rb'(?:^|, )(\w+)=(?:"((?:[^"\\]|\\.)*)"|([^",]+))(?=,|$)', rest)
        fields = {name: re.sub(rb'\\(.)', rb'\1', text) or token for name, text, token in pairs}
        self.fields.append(fields)
        method, target, _ = head.split(b' ', 2)
        hash_name = self.algorithm.decode().partition('-sess')[0].replace('-', '')

        def h(*parts):
            return hashlib.new(hash_name, b':'.join(parts)).hexdigest().encode()

        nonce, count, cnonce = fields[b'nonce'], fields[b'nc'], fields[b'cnonce']
        a1 = h(*self.secret)
        if b'-sess' in self.algorithm:
            a1 = h(a1, nonce, cnonce)
        is_fresh = self.left[nonce] > 0 and int(count, 16) == self.uses - self.left[nonce] + 1
        self.left[nonce] -= 1
        return is_fresh and scheme == b'Digest' and fields == {
            b'username': self.secret[0], b'realm': self.secret[1], b'nonce': nonce,
            b'uri': target, b'qop': b'auth', b'nc': b'%08x' % int(count, 16), b'cnonce': cnonce,
            b'response': h(a1, nonce, count, cnonce, b'auth', h(method, target)),
            b'algorithm': self.algorithm, b'opaque': self.opaque}


@pytest.mark.parametrize('algorithm', [b'SHA-256', b'MD5', b'SHA-256-sess', b'MD5-sess'])
@on_loops
async def test_digest_answers_a_challenge_and_then_needs_none(algorithm):
    realm = Realm(algorithm)
    async with answering(realm) as (request, script):
        request = digest(request, 'user', 'password')
        for _ in range(3):
            assert (await get(request, URL))[2] == b'ok'
    assert len(script.heads) == 4
    assert set(script.connections) == {0}
    assert [fields[b'nc'] for fields in realm.fields] == [b'00000001', b'00000002', b'00000003']
    assert len(realm.fields[0][b'cnonce']) == 32


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


@on_loops
async def test_digest_at_once():
    async with answering(Realm()) as (request, script):
        request = digest(request, 'user', 'password')
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(get(request, URL)) for _ in range(2)]
        assert [task.result()[0] for task in tasks] == [b'200'] * 2
    assert len(script.heads) == 4


@on_loops
async def test_digest_calls_the_body_function_again():
    async with answering(Realm()) as (request, script):
        for _ in range(2):
            await digest(request, 'user', 'password')(
                b'POST', URL, headers=((b'content-length', b'3'),), body=streamed(b'abc'))
    assert script.bodies == [b'abc'] * 4


UNAUTHORIZED = b'HTTP/1.1 401 No\r\ncontent-length: %d\r\n' + CHALLENGE + b'\r\n\r\n'


@pytest.mark.parametrize('length, connections', [(4000, 1), (1_000_000, 2)])
@on_loops
async def test_digest_uses_the_connection_of_a_401_again_if_its_body_is_short(
        length, connections):
    async def script(peer):
        while True:
            if b'authorization' in await peer.read_head():
                await peer.send(OK)
            else:
                # The body comes after its head.
                await peer.send(UNAUTHORIZED % length, bytes(length))

    async with Server(script) as server, pool() as request:
        assert (await get(digest(request, 'user', 'password'), server.url))[2] == b'ok'
        assert len(server.peers) == connections


@on_loops
async def test_digest_closes_a_401_that_has_no_end(monkeypatch):
    assert lowhaio_auth.DRAIN_TIMEOUT == 1
    monkeypatch.setattr(lowhaio_auth, 'DRAIN_TIMEOUT', 0.01)

    async def script(peer):
        head = await peer.read_head()
        if b'authorization' in head:
            await peer.send(OK)
        else:
            await peer.send(UNAUTHORIZED % 1000)
            await peer.closed()
            closed.set()

    closed = asyncio.Event()
    async with Server(script) as server, pool(max_connections=1, socket_timeout=1000) as request:
        assert (await get(digest(request, 'user', 'password'), server.url))[2] == b'ok'
        await closed.wait()


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
    # The first one is encoded by lowhaio, the second one by the layer.
    assert script.lines == [f'GET {target}'] * 2


@pytest.mark.parametrize('kwargs', [
    {'url': URL + '\n'}, {'url': URL + '\x85'}, {'url': URL + '\ud800'}, {'params': 5},
    {'method': 'GET'}, {'method': b'G T'}])
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
    # The best of several.
    ([b'Digest realm="r",nonce="n",algorithm=MD5,qop="auth"',
      b'Digest realm="r",nonce="n",algorithm=SHA-256,qop="auth"'], b'SHA-256'),
    ([b'Digest realm="r",nonce="n",algorithm=SHA-256,qop="auth", '
      b'Digest realm="r",nonce="n",algorithm=MD5,qop="auth"'], b'SHA-256'),
    ([b'Digest realm="r",nonce="n",algorithm=SHA-512-256,qop="auth", '
      b'Digest realm="r",nonce="n",algorithm=MD5-sess,qop="auth"'], b'MD5-sess'),
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
    b'www-authenticate: Digest realm="r", nonce="n"',
    b'www-authenticate: Digest realm="r", nonce="n", qop="auth-int"',
    b'www-authenticate: Digest realm="r", nonce="n", qop="auth", algorithm=SHA-512-256',
    b'www-authenticate: Digest realm="r", nonce="n", qop="auth", algorithm="\xff"',
    b'www-authenticate: Digest realm="r", nonce="n", qop="auth',
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


@pytest.mark.parametrize('algorithm, expected', [
    (b'MD5', b'8ca523f5e9506fed4657c9700eebdbec'),
    (b'SHA-256', b'753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1'),
])
@on_loops
async def test_digest_as_in_the_examples_of_rfc_7616(algorithm, expected, monkeypatch):
    monkeypatch.setattr(
        secrets, 'token_hex', lambda _: 'f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ')
    challenge = (
        b'WWW-Authenticate: Digest realm="http-auth@example.org", qop="auth, auth-int", '
        b'algorithm=%b, nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", '
        b'opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"' % algorithm)
    async with answering(response(401, b'', challenge), OK) as (request, script):
        await get(digest(request, 'Mufasa', 'Circle of Life'),
                  'http://www.example.org/dir/index.html')
    assert b'response="%b"' % expected in authorizations(script)[1]


@pytest.mark.parametrize('field', [
    b'a' * 16000, b'a ' * 8000, b'a=' * 8000, b'a="' * 5000, b' ' * 16000, b'a' + b' ' * 16000,
    b'a=' + b' ' * 16000, b'a="' + b'\\' * 16000, b'Digest ' + b'a=b,' * 4000,
], ids=range(9))
@on_loops
async def test_the_longest_bad_field_takes_no_time(field):
    async def request(method, url, **kwargs):
        return b'401', ((b'www-authenticate', field),), None

    started = time.process_time()
    await digest(request, 'user', 'password')(b'GET', URL)
    # Far more than it takes, and far less than what is quadratic would.
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
], ids=['basic', 'bearer', 'digest'])
def test_a_block_of_the_readme_runs_as_it_stands(block, shown, requests, capsys):
    script = Answering(website)
    with internet(script):
        run_block(block)
    assert capsys.readouterr().out == shown
    assert len(script.heads) == requests
    assert len(BLOCKS) == 3
