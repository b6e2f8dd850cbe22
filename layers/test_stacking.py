"""Tests of the layers together, which work in the orders that README.md allows, and no others."""

import asyncio
import collections
import functools
import gc
import gzip
import inspect
import itertools
import pathlib
import re
from http.cookiejar import CookieJar
from urllib.parse import unquote

import pytest
from opentelemetry.sdk.trace import TracerProvider

import lowhaio_auth
import lowhaio_aws_sigv4
import lowhaio_redirect
import lowhaio_retry
from lowhaio import HttpConnectionError, HttpDataError, HttpError, buffered, streamed
from lowhaio_auth import basic, bearer, digest
from lowhaio_aws_sigv4 import aws_sigv4_headers, signed
from lowhaio_chunked import chunked
from lowhaio_compression import compressed, decompressed
from lowhaio_cookies import with_cookies
from lowhaio_opentelemetry import Telemetry
from lowhaio_redirect import redirectable
from lowhaio_retry import retry
from lowhaio_session import compose
from tests.harness import (
    OK,
    Answering,
    Server,
    connecting_to,
    get,
    internet,
    on_loops,
    on_one_loop,
    pool,
    python_blocks,
    response,
    run_block,
    turns,
    value,
    values_of,
)

README = pathlib.Path(__file__).with_name('README.md')
BLOCKS = python_blocks(README)


async def get_token():
    return 'token'


async def get_credentials():
    return 'id', 'secret', ((b'x-amz-security-token', b'token'),)


LAYERS = {
    'redirect': redirectable,
    'retry': lambda request: retry(
        request, ((HttpError, (0, 0)),), code_intervals=((b'503', (0,)),)),
    'decompressed': decompressed,
    'cookies': lambda request: with_cookies(request, CookieJar()),
    'basic, bearer': lambda request: bearer(request, get_token, origin='http://a.example'),
    'digest': lambda request: digest(request, 'user', 'password', origin='http://a.example'),
    'sigv4': lambda request: signed(request, get_credentials, 's3', 'eu-west-2'),
    'traced': Telemetry(TracerProvider()).traced,
}
CREDENTIALS = ('basic, bearer', 'digest', 'sigv4')


def table():
    """What the table says about each pair of an outer and an inner layer."""
    head, _, *rows = re.findall(r'^\|.*\|$', README.read_text().split('Which layer works')[1],
                                re.MULTILINE)
    columns = cells(head)[1:]
    return {(outer, inner): cell.partition(' ')[0]
            for outer, *row in map(cells, rows)
            for inner, cell in zip(columns, row, strict=True) if outer != inner}


def cells(line):
    return [cell.strip() for cell in line.strip('|').split('|')]


TABLE = table()
RECOMMENDED = ('decompressed', 'redirect', 'retry', 'cookies')
RECOMMENDED_ORDERS = [
    (*RECOMMENDED, 'basic, bearer'), (*RECOMMENDED, 'sigv4'),
    ('decompressed', 'redirect', 'retry', 'digest', 'cookies')]
# All orders but those with `traced`, which is tried in each place of those that are recommended.
ORDERS = [order for credentials in CREDENTIALS for order in itertools.permutations(
    [name for name in LAYERS if name not in (*CREDENTIALS, 'traced')] + [credentials])]
ORDERS += [(*order[:place], 'traced', *order[place:])
           for order in RECOMMENDED_ORDERS for place in range(len(order) + 1)]


def is_allowed(order):
    """Whether the table allows this order of names, the outermost first."""
    return all(TABLE[pair] == 'yes' for pair in itertools.combinations(order, 2))


def stacked(request, order):
    return compose(request, *(LAYERS[name] for name in order))


def test_the_table_has_all_layers():
    assert set(TABLE) == set(itertools.permutations(LAYERS, 2))
    assert set(TABLE.values()) == {'yes', 'no'}
    modules = {path.stem for path in README.parent.glob('*/lowhaio_*.py')}
    modules |= {path.parent.name for path in README.parent.glob('*/lowhaio_*/__init__.py')}
    links = set(re.findall(r'^\| \[(lowhaio-[a-z0-9-]+)\]\(\w+/README\.md\)', README.read_text(),
                           re.MULTILINE))
    assert {link.replace('-', '_') for link in links} == modules
    for link in re.findall(r'\]\((\w+/README\.md)\)', README.read_text()):
        assert (README.parent / link).exists()


# ----------------------------------------------------------------------------- a long journey
#
# a.example/start   is not available at first. Then it sets a cookie and redirects to
# a.example/next    which hangs up at first. Then it redirects to
# b.example/other   which must get no credentials. It redirects to
# a.example/end     which answers with compressed content and trailers.

class Site:
    def __init__(self, credentials, content):
        self.credentials = credentials
        self.content = content
        self.visits = collections.Counter()
        self.last_count = 0
        self.sessions = 0

    def __call__(self, head, body):
        host = value(head, b'host').decode()
        target = head.split(b' ')[1].decode()
        if self.decoded(head, body) != self.content:
            return response(400, b'another body')
        if b'gzip' not in (value(head, b'accept-encoding') or b''):
            return response(400, b'no accept-encoding')
        if host == 'a.example' and not self.is_authorized(head, host, target):
            # Each session has its own nonce.
            self.sessions += 1
            return response(
                401, b'', b'www-authenticate: Digest realm="r", nonce="%d", qop="auth"'
                % self.sessions, b'set-cookie: session=%d' % self.sessions)
        if host == 'b.example' and any(values_of(head, name) for name in (
                b'authorization', b'cookie', b'x-amz-security-token')):
            return response(400, b'told a secret')
        if target in ('/next', '/end') and b'known=1' not in self.cookies(head):
            return response(400, b'no cookie')
        self.visits[target] += 1
        return getattr(self, target[1:])()

    def cookies(self, head):
        return (value(head, b'cookie') or b'').split(b'; ')

    def decoded(self, head, body):
        if values_of(head, b'transfer-encoding'):
            chunks = re.split(rb'[0-9a-f]+\r\n', body)
            body = b''.join(chunk.removesuffix(b'\r\n') for chunk in chunks)
        return gzip.decompress(body)

    def is_authorized(self, head, host, target):
        given = value(head, b'authorization') or b''
        if self.credentials == 'sigv4':
            return self.is_signed(head, given, host, target)
        if self.credentials == 'digest':
            count = int((re.findall(rb'nc=(\w+)', given) or (b'0',))[0], 16)
            is_new, self.last_count = count > self.last_count, max(count, self.last_count)
            session = re.findall(rb' nonce="(\d+)"', given)
            return is_new and b'uri="%b"' % target.encode() in given and \
                session and b'session=' + session[0] in self.cookies(head)
        return given == b'Bearer token'

    def is_signed(self, head, given, host, target):
        names = re.findall(rb'SignedHeaders=([^,]*)', given)
        fields = tuple((name, field) for name in (names[0].split(b';') if names else ())
                       for field in values_of(head, name))
        assert all(b'security-token' in name for name, field in fields if field == b'token')
        return given in dict(aws_sigv4_headers(
            'id', 'secret', fields, 's3', 'eu-west-2', host, 'PUT', unquote(target), (),
            (value(head, b'x-amz-content-sha256') or b'').decode())).values()

    def start(self):
        if self.visits['/start'] == 1:
            return response(503)
        return response(307, b'', b'location: /next', b'set-cookie: known=1')

    def next(self):
        if self.visits['/next'] == 1:
            return None
        return response(307, gzip.compress(b'next'), b'location: //b.example/other',
                        b'content-encoding: gzip')

    def other(self):
        return response(307, b'', b'location: //a.example/end', b'set-cookie: other=1')

    def end(self):
        content = gzip.compress(b'the end')
        return (b'HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n'
                b'%x\r\n%b\r\n0\r\nx-sum: 1\r\n\r\n' % (len(content), content))


async def rows():
    for number in range(3):
        yield b'row %d\n' % number
        await asyncio.sleep(0)


ROWS = b'row 0\nrow 1\nrow 2\n'


async def is_arriving(order, monkeypatch):
    monkeypatch.setattr(lowhaio_aws_sigv4, 'time', lambda: 1_790_000_000)
    framing = () if 'sigv4' in order else ((b'transfer-encoding', b'chunked'),)
    body = compressed(rows, b'gzip')
    script = Answering(Site(order[-1] if order[-1] in CREDENTIALS else next(
        name for name in order if name in CREDENTIALS), ROWS))
    async with Server(script) as server:
        async with pool(get_connection=connecting_to(http=server.port),
                        max_connections_per_origin=1) as request:
            try:
                code, headers, response_body = await stacked(request, order)(
                    b'PUT', 'http://a.example/start', headers=iter(framing),
                    body=chunked(body) if framing else body)
                content = await buffered(response_body)
            except HttpError:
                return False
    if code != b'200':
        return False
    assert content == b'the end'
    assert response_body.trailers == ((b'x-sum', b'1'),)
    assert headers == ((b'transfer-encoding', b'chunked'),)
    await response_body.aclose()
    return True


@pytest.mark.parametrize('order', ORDERS, ids='-'.join)
@on_one_loop
async def test_layers_work_in_the_orders_of_the_table_and_in_no_other(order, monkeypatch):
    assert await is_arriving(order, monkeypatch) is is_allowed(order)


def test_each_cell_of_the_table_decides_some_order():
    """So the tests before and after this one notice a wrong cell."""
    alone = [[pair for pair in itertools.combinations(order, 2) if TABLE[pair] == 'no']
             for order in ORDERS]
    decided = {tuple(refused) for refused in alone if len(refused) <= 1}
    of_credentials = set(itertools.permutations(CREDENTIALS, 2))
    assert decided == {(), *((pair,) for pair, cell in TABLE.items()
                             if cell == 'no' and pair not in of_credentials)}
    allowed = {pair for order, refused in zip(ORDERS, alone, strict=True) if not refused
               for pair in itertools.combinations(order, 2)}
    assert allowed == {pair for pair, cell in TABLE.items() if cell == 'yes'}


@pytest.mark.parametrize('outer, inner', list(itertools.permutations(CREDENTIALS, 2)))
@on_loops
async def test_two_credentials_for_one_origin_are_one_too_many(outer, inner):
    kinds = {'basic, bearer': b'Bearer', 'digest': b'Digest', 'sigv4': b'AWS4-HMAC-SHA256'}

    def answer(head, body):
        wanted = kinds[outer if b' /outer ' in head else inner]
        is_good = (value(head, b'authorization') or b'').startswith(wanted)
        return OK if is_good else response(401, b'', CHALLENGE)

    async with Server(Answering(answer)) as server:
        async with pool(get_connection=connecting_to(http=server.port)) as request:
            request = stacked(request, (outer, inner))
            codes = [(await get(request, f'http://a.example/{path}'))[0]
                     for path in ('inner', 'outer', 'inner')]
    assert b'401' in codes
    assert TABLE[outer, inner] == 'no'


@pytest.mark.parametrize('order', RECOMMENDED_ORDERS, ids='-'.join)
def test_the_recommended_order_is_that_of_the_examples(order):
    made = re.findall(r'request = (\w+)\(', BLOCKS[0])
    assert made == ['basic', 'with_cookies', 'retry', 'redirectable', 'decompressed']
    # `compose` names them the other way round.
    [composed] = re.findall(r'compose\((.*?)\n    code', BLOCKS[1], re.DOTALL)
    assert re.findall('|'.join(made), composed) == made[::-1]
    assert is_allowed(order)


def test_what_the_example_needs_is_what_one_is_told_to_install():
    [names] = re.findall(r'^pip install \. \./layers/\{(.*)\}$', README.read_text(), re.MULTILINE)
    assert names.split(',') == re.findall(r'^from lowhaio_(\w+) import', BLOCKS[0], re.MULTILINE)


each_readme = pytest.mark.parametrize(
    'readme', sorted(README.parent.glob('*/README.md')), ids=lambda path: path.parent.name)


@each_readme
def test_a_package_index_can_show_the_readme_of_a_layer(readme):
    """All links are absolute. Those to the repository lead to files and headings that exist."""
    text = re.sub('(?ms)^```.*?^```$', '', readme.read_text())
    targets = dict(re.findall(r'(?m)^\[(.*)\]: (.*)$', text))
    used = re.findall(r'\[([\w-]+)\](?![:(])', text)
    assert set(used) == set(targets)
    for link in [*targets.values(), *re.findall(r'\]\((.*?)\)', text)]:
        assert link.startswith('https://')
        _, is_here, path = link.partition('/lowhaio/blob/HEAD/')
        path, _, fragment = path.partition('#')
        assert not is_here or (README.parent.parent / path).is_file()
        assert not fragment or f'## {fragment.replace("-", " ")}\n' in (
            README.parent.parent / path).read_text().lower()


HEADINGS = [
    'What it does', 'Errors', 'With other layers', 'What it does not do', 'Installing']


@each_readme
def test_all_readmes_have_the_same_headings(readme):
    """So whoever knows one of them knows where to look in the others."""
    text = re.sub('(?ms)^```.*?^```$', '', readme.read_text())
    assert re.findall('(?m)^# (.*)$', text) == [
        f'lowhaio-{readme.parent.name.replace("_", "-")}']
    assert re.findall('(?m)^## (.*)$', text) == HEADINGS
    introduction, *parts = re.split('(?m)^##+ .*$', readme.read_text())
    assert re.search('(?m)^```python$', introduction)
    # Each part says something, unless the next heading below it does at once.
    assert all(part.strip() for part in parts[1:])


INSTALLING = re.compile(r"""
From a checkout of the repository, with all other layers and what they need:

```shell
pip install \. "\./layers\[all\]"
```

Or this layer alone:

```shell
pip install \. (.*)
```

Install one of the two and not both, since both have this module\. Under these names, the package
index has other code, or nothing\. \[Installing\] tells more, and how to install from a git URL\.
""")


@each_readme
def test_all_readmes_tell_the_same_of_how_to_install(readme):
    [folders] = INSTALLING.match(readme.read_text().partition('## Installing\n')[2]).groups()
    named = re.findall(r'\./layers/(\w+)', folders)
    assert named[-1] == readme.parent.name
    needed = re.findall(r"^ +'lowhaio-([\w-]+)>=", readme.with_name('setup.py').read_text(),
                        re.MULTILINE)
    assert {name.replace('-', '_') for name in needed} <= set(named)


def test_what_each_layer_has_a_copy_of_is_the_same_in_all():
    modules = (lowhaio_auth, lowhaio_redirect, lowhaio_retry)
    assert len({inspect.getsource(module.reiterable) for module in modules}) == 1
    assert inspect.getsource(lowhaio_redirect.drain) == inspect.getsource(lowhaio_retry.drain)
    assert {(module.MAX_DRAINED, module.DRAIN_TIMEOUT) for module in modules} == {(65536, 1)}


@on_loops
async def test_credentials_for_two_origins():
    script = Answering(OK)
    async with Server(script) as server:
        async with pool(get_connection=connecting_to(http=server.port)) as request:
            request = basic(request, 'a', 'a', origin='http://a.example')
            request = basic(request, 'b', 'b', origin='http://b.example')
            for host in ('a.example', 'b.example', 'c.example'):
                await get(request, f'http://{host}/')
    assert [values_of(head, b'authorization') for head in script.heads] == [
        [b'Basic YTph'], [b'Basic Yjpi'], []]


# ----------------------------------------------------------- what can be sent only once

CONTENT = b'The content, '


async def reading(chunks):
    async for chunk in chunks:
        yield chunk


def once():
    """Functions that can make a body only once, and the field that frames it."""
    async def rest():
        yield CONTENT

    def wrapped():
        return functools.partial(reading, rest())

    def same():
        generator = rest()
        return lambda: generator

    coded, length = (b'transfer-encoding', b'chunked'), (b'content-length', b'13')
    return [
        (chunked(same()), coded), (chunked(wrapped()), coded),
        (chunked(compressed(same(), b'gzip')), coded),
        (chunked(compressed(wrapped(), b'gzip')), coded),
        (same(), length), (wrapped(), length),
    ]


CHALLENGE = b'www-authenticate: Digest realm="r", nonce="n", qop="auth"'
AGAIN = {
    'retry': (lambda request: retry(request, code_intervals=((b'503', (0, 0)),)), response(503)),
    'redirect': (redirectable, response(307, b'', b'location: /')),
    'digest': (lambda request: digest(request, 'user', 'password'),
               response(401, b'', CHALLENGE)),
}


@pytest.mark.parametrize('index', range(len(once())))
@pytest.mark.parametrize('layer', AGAIN)
@on_loops
async def test_a_body_that_can_be_made_once_is_not_sent_empty(layer, index):
    around, first = AGAIN[layer]
    body, framing = once()[index]
    script = Answering(first, OK)
    async with Server(script) as server, pool() as request:
        with pytest.raises(HttpDataError, match='body must return a new async iterator at each '
                           'call, got ') as caught:
            await around(request)(b'PUT', server.url, headers=(framing,), body=body)
        assert isinstance(caught.value.__cause__, HttpConnectionError)
        assert isinstance(caught.value.__cause__.__cause__, ValueError)
        assert caught.value.response_started
    assert len(script.heads) == 1


@pytest.mark.parametrize('layer', AGAIN)
@on_loops
async def test_a_body_that_can_be_made_again_is_sent_again(layer):
    around, first = AGAIN[layer]
    script = Answering(first, OK)
    body = chunked(compressed(streamed(CONTENT), b'gzip'))
    async with Server(script) as server, pool() as request:
        for _ in range(2):
            code, _, _ = await around(request)(
                b'PUT', server.url, headers=((b'transfer-encoding', b'chunked'),), body=body)
            assert code == b'200'
    assert len(set(script.bodies)) == 1
    assert len(script.heads) == 3


@pytest.mark.parametrize('index', range(len(once())))
@on_loops
async def test_a_body_that_has_been_sent_is_not_signed_as_an_empty_one(index):
    body, _ = once()[index]
    script = Answering(response(503), OK)
    async with Server(script) as server, pool() as request:
        request = retry(signed(request, get_credentials, 's3', 'eu-west-2'),
                        code_intervals=((b'503', (0,)),))
        with pytest.raises(HttpDataError, match='body must return a new async iterator at each '
                           'call, got '):
            await request(b'PUT', server.url, body=body)
    assert len(script.heads) == 1


# ---------------------------------------------------------------- what is not read to its end

ALLOWED = [order for order in ORDERS if is_allowed(order) and order[-1] != 'digest']


@pytest.mark.parametrize('order', ALLOWED, ids='-'.join)
@on_loops
async def test_a_dropped_body_closes_its_connection(order):
    async def script(peer):
        await peer.read_head()
        await peer.send(b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\ncontent-encoding: gzip\r\n'
                        b'\r\n' + gzip.compress(b'a')[:5])
        await peer.closed()
        closed.append(peer.index)

    closed = []
    async with Server(script) as server, pool(max_connections=1) as request:
        for number in range(3):
            _, _, body = await stacked(request, order)(b'GET', server.url)
            if number == 0:
                await body.aclose()
            elif number == 1:
                read = asyncio.create_task(buffered(body))
                await turns(5)
                read.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await read
                del read
            del body
            gc.collect()
            while len(closed) <= number:
                await asyncio.sleep(0)


@pytest.mark.parametrize('order', ALLOWED, ids='-'.join)
@on_loops
async def test_a_cancelled_request_closes_its_connection(order):
    async def script(peer):
        await peer.read_head()
        asked.set()
        await peer.closed()
        closed.set()

    asked, closed = asyncio.Event(), asyncio.Event()
    async with Server(script) as server, pool() as request:
        task = asyncio.create_task(stacked(request, order)(
            b'PUT', server.url, headers=((b'content-length', b'1'),), body=streamed(b'a')))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await closed.wait()


# -------------------------------------------------------------------------------- the README


@pytest.mark.parametrize('block, shown', [
    pytest.param(BLOCKS[0], "b'200' b'Hello'\n", id='stack'),
    pytest.param(BLOCKS[1], "b'200' b'Hello'\n", id='compose'),
    pytest.param(BLOCKS[2], "b'200' b'Hello'\n", id='user-agent'),
    pytest.param(BLOCKS[3], '5\n', id='counted'),
])
def test_a_block_of_the_readme_runs_as_it_stands(block, shown, capsys):
    script = Answering(response(200, b'Hello'))
    with internet(script):
        run_block(block)
    assert capsys.readouterr().out == shown
    assert len(BLOCKS) == 4
    if 'user_agent' in block:
        assert value(script.heads[0], b'user-agent') == b'example/1.0'
    if 'rows' in block:
        assert Site('', ROWS).decoded(script.heads[0], script.bodies[0]) == ROWS
