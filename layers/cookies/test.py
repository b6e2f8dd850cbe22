"""Tests of lowhaio_cookies: what a server sees after what it has set."""

import contextlib
import os
import pathlib
import time
from http.cookiejar import Cookie, CookieJar, DefaultCookiePolicy, LWPCookieJar, MozillaCookieJar

import pytest
from harness import (
    Answering,
    Server,
    connecting_to,
    internet,
    on_loops,
    pool,
    python_blocks,
    response,
    run_block,
    server_context,
    trusting_context,
    value,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lowhaio_cookies
from lowhaio import HttpConnectionError, streamed
from lowhaio_cookies import with_cookies

# Thousands of them take a minute: 200 are a share, the same in each run.
EXAMPLES = int(os.environ.get('LOWHAIO_EXAMPLES', '200'))

HOSTS = ('example.com', '*.example.com', '*.b.example.com', 'other.com', '*.co.uk', '127.0.0.1')


@contextlib.asynccontextmanager
async def web(jar):
    """Yields a function that gets a URL, sets cookies, and returns the cookies that were sent."""
    async def visit(url, *set_cookies, code=200, headers=()):
        fields[:] = [code, b'', *(b'Set-Cookie: ' + line.encode('latin-1')
                                  for line in set_cookies)]
        await request_with_cookies(b'GET', url, headers=headers)
        return value(script.heads[-1], b'cookie')

    fields = []
    script = Answering(lambda head, body: response(*fields))
    async with Server(script) as server, Server(script, server_context(*HOSTS)) as tls_server:
        async with pool(get_connection=connecting_to(http=server.port, https=tls_server.port),
                        get_ssl_context=trusting_context) as request:
            request_with_cookies = with_cookies(request, jar)
            yield visit


# ------------------------------------------------------------------------------------- scope


URL = 'http://www.example.com/a/b'


@pytest.mark.parametrize('url, set_cookie, then, sent', [
    # The host alone, or with Domain its subdomains.
    (URL, 'a=1', 'http://www.example.com/a/c', b'a=1'),
    (URL, 'a=1', 'http://WWW.Example.COM:81/a/', b'a=1'),
    (URL, 'a=1', 'http://www.example.com./a/', b'a=1'),
    (URL, 'a=1', 'http://example.com/a/', None),
    (URL, 'a=1', 'http://sub.www.example.com/a/', None),
    (URL, 'a=1', 'http://xwww.example.com/a/', None),
    (URL, 'a=1; Domain=example.com', 'http://example.com/a/', b'a=1'),
    (URL, 'a=1; Domain=example.com', 'http://other.example.com/a/', b'a=1'),
    (URL, 'a=1; domain=.EXAMPLE.com', 'http://x.y.example.com/a/', b'a=1'),
    (URL, 'a=1; Domain=example.com', 'http://notexample.com/a/', None),
    (URL, 'a=1; Domain=example.com', 'http://example.com.evil.com/a/', None),
    (URL, 'a=1; Domain=', 'http://sub.www.example.com/a/', None),
    (URL, 'a=1; Domain=', URL, b'a=1'),
    (URL, 'a=1; Domain=example.com; Domain=www.example.com', 'http://example.com/a/', None),
    # Domains that are not the host's to set.
    (URL, 'a=1; Domain=other.com', 'http://other.com/a/', None),
    (URL, 'a=1; Domain=other.com', URL, None),
    (URL, 'a=1; Domain=sub.www.example.com', URL, None),
    (URL, 'a=1; Domain=com', URL, None),
    (URL, 'a=1; Domain=xample.com', URL, None),
    (URL, 'a=1; Domain=example.com.', URL, None),
    ('http://www.shop.co.uk/', 'a=1; Domain=co.uk', 'http://www.shop.co.uk/', None),
    ('http://www.shop.co.uk/', 'a=1; Domain=shop.co.uk', 'http://x.shop.co.uk/', b'a=1'),
    ('http://me.github.io/', 'a=1; Domain=github.io', 'http://me.github.io/', None),
    ('http://co.uk/', 'a=1; Domain=co.uk', 'http://co.uk/', b'a=1'),
    ('http://co.uk/', 'a=1; Domain=co.uk', 'http://shop.co.uk/', None),
    ('http://evil.local/', 'a=1; Domain=local', 'http://localhost/', None),
    ('http://bücher.example/', 'a=1', 'http://xn--bcher-kva.example/', b'a=1'),
    ('http://x.bücher.example/', 'a=1; Domain=xn--bcher-kva.example',
     'http://bücher.example/', b'a=1'),
    # Names without a dot, and addresses, have no subdomains.
    ('http://localhost/', 'a=1', 'http://localhost/', b'a=1'),
    ('http://localhost/', 'a=1; Domain=localhost', 'http://localhost/', b'a=1'),
    ('http://localhost/', 'a=1', 'http://localhost.local/', None),
    ('http://127.0.0.1/', 'a=1', 'http://127.0.0.1:81/', b'a=1'),
    ('http://127.0.0.1/', 'a=1; Domain=127.0.0.1', 'http://127.0.0.1/', b'a=1'),
    ('http://127.0.0.1/', 'a=1; Domain=0.0.1', 'http://127.0.0.1/', None),
    ('http://127.0.0.1/', 'a=1; Domain=.0.0.1', 'http://126.0.0.1/', None),
    ('http://[::1]/', 'a=1', 'http://[::1]:81/', b'a=1'),
    # Paths.
    (URL, 'a=1', 'http://www.example.com/a', b'a=1'),
    (URL, 'a=1', 'http://www.example.com/a?b', b'a=1'),
    (URL, 'a=1', 'http://www.example.com/ab', None),
    (URL, 'a=1', 'http://www.example.com/', None),
    (URL, 'a=1; Path=/', 'http://www.example.com', b'a=1'),
    (URL, 'a=1; Path=/x', 'http://www.example.com/x/y', b'a=1'),
    (URL, 'a=1; Path=/x/', 'http://www.example.com/x', None),
    (URL, 'a=1; Path=/x/', 'http://www.example.com/x/y', b'a=1'),
    (URL, 'a=1; Path=x', 'http://www.example.com/a/', b'a=1'),
    (URL, 'a=1; Path=', 'http://www.example.com/a/', b'a=1'),
    ('http://www.example.com', 'a=1', 'http://www.example.com/x', b'a=1'),
    ('http://www.example.com/é x/', 'a=1', 'http://www.example.com/%C3%A9%20x/y', b'a=1'),
    # TLS.
    ('https://www.example.com/', 'a=1; Secure', 'https://www.example.com/', b'a=1'),
    ('https://www.example.com/', 'a=1; Secure', 'http://www.example.com/', None),
    ('https://www.example.com/', 'a=1', 'http://www.example.com/', b'a=1'),
    (URL, 'a=1; Secure', 'https://www.example.com/a/', None),
    # Expiry.
    (URL, 'a=1; Max-Age=60', URL, b'a=1'),
    (URL, 'a=1; Max-Age=0', URL, None),
    (URL, 'a=1; Max-Age=-1', URL, None),
    (URL, 'a=1; Max-Age=+1', URL, b'a=1'),
    (URL, 'a=1; Max-Age=1_0; Expires=Thu, 01 Jan 1970 00:00:00 GMT', URL, None),
    (URL, 'a=1; Expires=Thu, 01-Jan-1970 00:00:00 GMT; Max-Age=1', URL, b'a=1'),
    (URL, 'a=1; Expires=Fri, 31 Dec 9999 23:59:59 GMT', URL, b'a=1'),
    (URL, 'a=1; Expires=Fri, 31 Dec 99999 23:59:59 GMT', URL, b'a=1'),
    (URL, 'a=1; Expires=soon', URL, b'a=1'),
    (URL, 'a=1; Max-Age=' + '9' * 1000, URL, b'a=1'),
    # Prefixes.
    ('https://example.com/', '__Secure-a=1; Secure', 'https://example.com/', b'__Secure-a=1'),
    ('https://example.com/', '__secure-a=1', 'https://example.com/', None),
    ('https://example.com/', '__Host-a=1; Secure; Path=/', 'https://example.com/',
     b'__Host-a=1'),
    ('https://example.com/', '__Host-a=1; Path=/', 'https://example.com/', None),
    ('https://example.com/', '__Host-a=1; Secure', 'https://example.com/', None),
    ('https://example.com/', '__Host-a=1; Secure; Path=/x', 'https://example.com/x', None),
    ('https://example.com/', '__host-a=1; Secure; Path=/; Domain=example.com',
     'https://example.com/', None),
    # Names and values.
    (URL, 'a=', URL, b'a='),
    (URL, 'a', URL, None),
    (URL, '=1', URL, None),
    (URL, '', URL, None),
    (URL, '; Path=/', URL, None),
    (URL, ' a = b=c ,"d"\t;x', URL, b'a=b=c ,"d"'),
    (URL, 'a="1; 2"', URL, b'a="1'),
    (URL, 'a=\xe9\xff', URL, b'a=\xe9\xff'),
    (URL, 'a=1\x012', URL, None),
    (URL, 'a=1\t2', URL, None),
    (URL, 'a\x7f=1', URL, None),
    (URL, 'a=1; Path=/\x01', URL, b'a=1'),
    (URL, 'a=' + 'x' * 4095, URL, b'a=' + b'x' * 4095),
    (URL, 'a=' + 'x' * 4096, URL, None),
    (URL, 'a=1; Path=/' + 'x' * 1024, URL, b'a=1'),
    (URL, 'a=1; Version=1; Port="81"; SameSite=Strict; Unknown', URL, b'a=1'),
])
@on_loops
async def test_where_a_cookie_is_sent(url, set_cookie, then, sent):
    async with web(CookieJar()) as visit:
        assert await visit(url, set_cookie) is None
        assert await visit(then) == sent


@on_loops
async def test_cookies_of_every_response_are_kept():
    async with web(CookieJar()) as visit:
        await visit(URL, 'a=1', 'b=2; Path=/', code=302)
        await visit(URL, 'c=3', code=404)
        assert await visit(URL) == b'a=1; c=3; b=2'


@on_loops
async def test_the_longest_path_is_sent_first_and_then_the_oldest():
    async with web(CookieJar()) as visit:
        await visit(URL, 'a=1; Path=/', 'b=2; Path=/a', 'c=3; Path=/a/b', 'd=4; Path=/a')
        await visit(URL, 'b=5; Path=/a')
        assert await visit(URL) == b'c=3; b=5; d=4; a=1'


@on_loops
async def test_a_cookie_replaces_the_one_of_its_name_domain_and_path():
    jar = CookieJar()
    async with web(jar) as visit:
        await visit(URL, 'a=1', 'a=2; Domain=example.com', 'a=3; Path=/', 'A=4')
        await visit(URL, 'a=5')
        assert await visit(URL) == b'a=5; A=4; a=2; a=3'
        await visit(URL, 'a=; Max-Age=0')
        await visit(URL, 'a=; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Domain=example.com')
        assert await visit(URL) == b'A=4; a=3'
        await visit(URL, 'none=; Max-Age=0')
        assert len(jar) == 2


@on_loops
async def test_what_came_without_tls_does_not_stand_in_for_what_came_with_it():
    for domain in ('', '; Domain=example.com'):
        async with web(CookieJar()) as visit:
            await visit('https://www.example.com/', f'a=1; Secure; Path=/x{domain}')
            for set_cookie in ('a=2; Path=/x', 'a=2; Path=/x/y', 'a=2; Path=/x; Max-Age=0',
                               'a=2; Path=/x; Domain=example.com',
                               'a=; Path=/x; Domain=example.com; Max-Age=0'):
                await visit('http://www.example.com/', set_cookie)
            assert await visit('https://www.example.com/x/y') == b'a=1'
            await visit('http://www.example.com/', 'a=3', 'b=4; Path=/x')
            assert await visit('https://www.example.com/x/y') == b'a=1; b=4; a=3'
            await visit('https://www.example.com/', f'a=5; Path=/x{domain}')
            assert await visit('http://www.example.com/x') == b'a=5; b=4; a=3'


@on_loops
async def test_cookies_expire(monkeypatch):
    now = time.time()
    async with web(jar := CookieJar()) as visit:
        await visit(URL, 'a=1; Max-Age=60', 'b=2', 'c=3; Max-Age=999999999999')
        assert {cookie.name: cookie.discard for cookie in jar} == {
            'a': False, 'b': True, 'c': False}
        monkeypatch.setattr(time, 'time', lambda: now + 59)
        assert await visit(URL) == b'a=1; b=2; c=3'
        monkeypatch.setattr(time, 'time', lambda: now + 61)
        assert await visit(URL) == b'b=2; c=3'
        monkeypatch.setattr(time, 'time', lambda: now + 401 * 24 * 60 * 60)
        assert await visit(URL, 'd=4') == b'b=2'
        assert [cookie.name for cookie in jar] == ['b', 'd']


@on_loops
async def test_a_cookie_of_the_headers_is_sent_alone():
    async with web(CookieJar()) as visit:
        await visit(URL, 'a=1')
        assert await visit(URL, 'b=2', headers=iter(((b'Cookie', b'c=3'),))) == b'c=3'
        assert await visit(URL, headers=iter(((b'x', b'y'),))) == b'a=1; b=2'


@on_loops
async def test_other_arguments_are_passed_on():
    script = Answering(response())
    length = (b'content-length', b'3')
    async with Server(script) as server, pool() as request:
        send = with_cookies(request, CookieJar())
        await send(b'PUT', server.url, {'a': 'b'}, (length,), streamed(b'abc'))
        await send(method=b'PUT', url=server.url, params={'a': 'b'}, headers=(length,),
                   body=streamed(b'abc'))
    assert script.lines == ['PUT /?a=b'] * 2
    assert script.bodies == [b'abc'] * 2


@on_loops
async def test_under_redirects_each_request_has_the_cookies_of_its_own_url():
    redirectable = pytest.importorskip('lowhaio_redirect').redirectable
    script = Answering(
        response(302, b'', b'set-cookie: a=1', b'location: http://other.com/'),
        response(302, b'', b'set-cookie: b=2', b'location: http://example.com/'),
        response())
    jar = CookieJar()
    async with Server(script) as server:
        async with pool(get_connection=connecting_to(http=server.port)) as request:
            await redirectable(with_cookies(request, jar))(b'GET', 'http://example.com/')
    assert [value(head, b'cookie') for head in script.heads] == [None, None, b'a=1']
    assert {(cookie.name, cookie.domain) for cookie in jar} == {
        ('a', 'example.com'), ('b', 'other.com')}


# ------------------------------------------------------------------------------------ bounds


@on_loops
async def test_the_cookies_of_a_domain_are_bounded(monkeypatch):
    monkeypatch.setattr(lowhaio_cookies, 'MAX_PER_DOMAIN', 5)
    jar = CookieJar()
    async with web(jar) as visit:
        for index in range(8):
            await visit(URL, f'a{index}={index}; Path=/{index}')
        assert [cookie.name for cookie in jar] == ['a3', 'a4', 'a5', 'a6', 'a7']
        await visit(URL, *(f'b{index}=' for index in range(9)))
        assert [cookie.name for cookie in jar] == ['b4', 'b5', 'b6', 'b7', 'b8']
        await visit('http://other.com/', 'c=1')
        assert len(jar) == 6
        # Nothing is left of the paths.
        assert [list(paths) for paths in jar._cookies.values()] == [['/a'], ['/']]


@on_loops
async def test_the_cookies_of_a_jar_are_bounded(monkeypatch):
    monkeypatch.setattr(lowhaio_cookies, 'MAX_PER_DOMAIN', 4)
    monkeypatch.setattr(lowhaio_cookies, 'MAX_COOKIES', 6)
    jar = CookieJar()
    async with web(jar) as visit:
        await visit('http://a.com/', 'a=1')
        await visit('http://b.com/', 'a=1', 'b=2', 'c=3')
        await visit('http://c.com/', 'a=1', 'b=2', 'c=3')
        assert [(cookie.domain, cookie.name) for cookie in jar] == [
            ('a.com', 'a'), ('b.com', 'b'), ('b.com', 'c'),
            ('c.com', 'a'), ('c.com', 'b'), ('c.com', 'c')]
        for index in range(20):
            await visit(f'http://x{index}.com/', 'a=1')
        assert len(jar) == len(jar._cookies) == 6
        assert 'x19.com' in jar._cookies


@on_loops
async def test_nothing_is_left_of_domains_and_paths_that_expired():
    jar = CookieJar()
    async with web(jar) as visit:
        for index in range(5):
            await visit(URL, f'a=1; Path=/{index}', f'a=; Path=/{index}; Max-Age=0')
            assert jar._cookies == {}


# -------------------------------------------------------------------------------------- jars


def cookie_of(name, text, domain='www.example.com', path='/', version=0):
    return Cookie(version, name, text, None, False, domain, domain.startswith('.'),
                  domain.startswith('.'), path, True, False, None, False, None, None, {})


@on_loops
async def test_cookies_that_others_have_put_into_the_jar():
    jar = CookieJar()
    for name, text, domain in (
            ('a', '1', 'www.example.com'), ('b', '2', '.example.com'), ('c', '3', 'example.com'),
            ('d', None, 'www.example.com'), ('e', '1\r\nx: y', 'www.example.com'),
            ('f', '1; g=2', 'www.example.com'), ('h', '€', 'www.example.com')):
        jar.set_cookie(cookie_of(name, text, domain))
    async with web(jar) as visit:
        assert await visit(URL) == b'a=1; d; b=2'


@pytest.mark.parametrize('kind', [MozillaCookieJar, LWPCookieJar])
@on_loops
async def test_jars_of_files(tmp_path, kind):
    path = str(tmp_path / 'cookies')
    async with web(jar := kind(path)) as visit:
        await visit('https://www.example.com/', 'a=1; Max-Age=60; HttpOnly', 'b=2',
                    'c="3 \xe9"; Domain=example.com; Secure; Max-Age=60',
                    'd=4; Expires=Fri, 31 Dec 9999 23:59:59 GMT')
        jar.save()
        assert 'httponly' in pathlib.Path(path).read_text().lower()
    jar = kind(path)
    jar.load()
    async with web(jar) as visit:
        assert set((await visit('https://www.example.com/')).split(b'; ')) == {
            b'a=1', b'c="3 \xe9"', b'd=4'}
        assert await visit('https://example.com/') == b'c="3 \xe9"'
        assert await visit('http://sub.example.com/') is None


@on_loops
async def test_the_policy_of_the_jar_is_asked():
    jar = CookieJar(DefaultCookiePolicy(blocked_domains=['.example.com']))
    async with web(jar) as visit:
        await visit(URL, 'a=1')
        assert await visit(URL) is None
        await visit('http://other.com/', 'a=1')
        assert await visit('http://other.com/') == b'a=1'


# ---------------------------------------------------------------------------- whatever is set


PIECES = st.one_of(
    st.sampled_from(['a=1', '; Domain=', '; Path=', '; Max-Age=', '; Expires=', '; Secure', '; ',
                     'example.com', 'Thu, 01 Jan 2070 00:00:00 GMT', '9', '__Host-', '.', '/']),
    st.characters(codec='latin-1', exclude_characters='\r\n\0'))


@given(st.lists(st.lists(PIECES, max_size=8).map(''.join), max_size=5))
@settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None,
          suppress_health_check=list(HealthCheck))
def test_any_set_cookie_is_kept_or_dropped(values):
    jar = CookieJar()
    suffixes = lowhaio_cookies.public_suffixes()
    place = lowhaio_cookies.Place('https://www.example.com/x/y')
    for line in values:
        lowhaio_cookies.keep(jar, suffixes, place, line)
    lowhaio_cookies.make_room(jar)
    for cookie in jar:
        assert cookie.domain in ('www.example.com', '.www.example.com', '.example.com')
        assert cookie.path.startswith('/')
    for _, field in lowhaio_cookies.cookie_field(jar, place):
        assert all(byte >= 0x20 and byte != 0x7f for byte in field)


# -------------------------------------------------------------------------------- bad arguments


@pytest.mark.parametrize('args, message', [
    ((None, CookieJar()), 'request must be a coroutine function, got NoneType'),
    ((print, {}), 'jar must be an http.cookiejar.CookieJar, got dict'),
])
def test_bad_arguments_fail_at_once(args, message):
    with pytest.raises(TypeError, match=message):
        with_cookies(*args)


@pytest.mark.parametrize('url, headers', [
    (b'http://h/', ()), ('ftp://h/', ()), ('http:///', ()), ('http://a@h/', ()),
    ('http://h:x/', ()), ('http://' + 'ü' * 100, ()), ('http://h/', 1), ('http://h/', (1,)),
    ('http://h/', ((1, 2),)), ('http://h/\ud800', ()),
])
@on_loops
async def test_bad_requests_are_refused(url, headers):
    async with pool() as request:
        with pytest.raises(HttpConnectionError, match='url must be a str that starts with'):
            await with_cookies(request, CookieJar())(b'GET', url, headers=headers)


def test_the_example_of_the_readme(capsys):
    script = Answering(response(200, b'', b'set-cookie: session=1; Secure'),
                       response(200, b'The content'))
    with internet(script, 'www.example.com'):
        for block in python_blocks(pathlib.Path(__file__).with_name('README.md')):
            run_block(block)
    assert capsys.readouterr().out == (
        "[('session', 'www.example.com')]\n200 b'The content'\n")
    assert value(script.heads[1], b'cookie') == b'session=1'
