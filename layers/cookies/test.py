"""Tests of lowhaio_cookies: what a server receives after it has set cookies."""

import contextlib
import inspect
import itertools
import os
import pathlib
import sys
import time
from http.cookiejar import Cookie, CookieJar, DefaultCookiePolicy, LWPCookieJar, MozillaCookieJar

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import lowhaio_cookies
from lowhaio import HttpConnectionError, streamed
from lowhaio_cookies import with_cookies
from tests.harness import (
    Answering,
    Server,
    connecting_to,
    context_for,
    internet,
    on_loops,
    on_one_loop,
    pool,
    python_blocks,
    response,
    run_block,
    trusting,
    value,
)

# Thousands of them take a minute: 200 are a share, the same in each run.
EXAMPLES = int(os.environ.get('LOWHAIO_EXAMPLES', '60'))

HOSTS = ('example.com', '*.example.com', '*.b.example.com', 'other.com', '*.co.uk', '127.0.0.1')


@contextlib.asynccontextmanager
async def web(jar, **options):
    """Yield a function that gets a URL, whose response sets cookies, and returns those sent."""
    async def visit(url, *set_cookies, code=200, headers=()):
        fields[:] = [code, b'', *(b'Set-Cookie: ' + line.encode('latin-1')
                                  for line in set_cookies)]
        await request_with_cookies(b'GET', url, headers=headers)
        return value(script.heads[-1], b'cookie')

    fields = []
    script = Answering(lambda head, body: response(*fields))
    async with Server(script) as server, Server(script, context_for(*HOSTS)) as tls_server:
        async with pool(get_connection=connecting_to(http=server.port, https=tls_server.port),
                        get_ssl_context=trusting) as request:
            request_with_cookies = with_cookies(request, jar, **options)
            yield visit


# ------------------------------------------------------------------------------------- scope


URL = 'http://www.example.com/a/b'


@pytest.mark.parametrize('url, set_cookie, then, sent', [
    # A cookie is for its host alone, or with Domain for its subdomains, too.
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
    # A host must not set cookies for these domains.
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
    # IDNA 2003 takes this for fass.example.
    ('http://faß.example/', 'a=1', 'http://xn--fa-hia.example/', b'a=1'),
    ('http://faß.example/', 'a=1', 'http://fass.example/', None),
    ('http://fass.example/', 'a=1', 'http://faß.example/', None),
    # Names without a dot, and addresses, have no subdomains.
    ('http://localhost/', 'a=1', 'http://localhost/', b'a=1'),
    ('http://localhost/', 'a=1; Secure', 'http://localhost/', None),
    ('http://localhost/', 'a=1; Domain=localhost', 'http://localhost/', b'a=1'),
    ('http://localhost/', 'a=1', 'http://localhost.local/', None),
    ('http://127.0.0.1/', 'a=1', 'http://127.0.0.1:81/', b'a=1'),
    ('http://127.0.0.1/', 'a=1; Domain=127.0.0.1', 'http://127.0.0.1/', b'a=1'),
    ('http://127.0.0.1/', 'a=1; Domain=0.0.1', 'http://127.0.0.1/', None),
    ('http://127.0.0.1/', 'a=1; Domain=.0.0.1', 'http://126.0.0.1/', None),
    # An IPv6 address may be written in several ways.
    ('http://[::1]:8080/', 'a=1', 'http://[::1]:8080/', b'a=1'),
    ('http://[::1]/', 'a=1', 'http://[::1]:81/', b'a=1'),
    ('http://[::1]/', 'a=1', 'http://[0:0::0:1]/', b'a=1'),
    ('http://[0:0:0:0:0:0:0:1]/', 'a=1', 'http://[::1]/', b'a=1'),
    ('http://[FE80::A]/', 'a=1', 'http://[fe80::a]/', b'a=1'),
    ('http://[::1]/', 'a=1', 'http://[::2]/', None),
    ('http://[::1]/', 'a=1', 'http://[::1:1]/', None),
    ('http://[::1]/', 'a=1', 'http://localhost/', None),
    ('http://[::1]/', 'a=1; Domain=[::1]', 'http://[::1]/', b'a=1'),
    ('http://[::1]/', 'a=1; Domain=::1', 'http://[::1]/', b'a=1'),
    ('http://[::1]/', 'a=1; Domain=:1', 'http://[::1]/', None),
    ('http://[::ffff:1.2.3.4]/', 'a=1; Domain=4', 'http://[::ffff:1.2.3.4]/', None),
    ('http://[fe80::1%25lo]/', 'a=1', 'http://[fe80::1%lo]/', b'a=1'),
    ('http://[fe80::1%25lo]/', 'a=1', 'http://[fe80::1]/', None),
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
    ('http://www.example.com/%zz/', 'a=1; Path=/%25zz', 'http://www.example.com/%zz/', b'a=1'),
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
    (URL, 'a=1; Max-Age=-' + '9' * 1000, URL, None),
    (URL, 'a=1; Max-Age=' + '9' * 1025, URL, b'a=1'),
    # An attribute that makes no sense does not count.
    (URL, 'a=1; Max-Age=0; Max-Age=soon', URL, None),
    (URL, 'a=1; Max-Age=0; Max-Age=1', URL, b'a=1'),
    (URL, 'a=1; Max-Age=-; Expires=Thu, 01 Jan 1970 00:00:00 GMT', URL, None),
    (URL, 'a=1; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Expires=soon', URL, None),
    (URL, 'a=1; Domain=other.com; Domain=', URL, b'a=1'),
    (URL, 'a=1; Path=/x; Path=y', 'http://www.example.com/a/', b'a=1'),
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
    ('https://example.com/x', '__Host-a=1; Secure', 'https://example.com/x', None),
    ('https://example.com/', '__Host-a=1; Secure; Path=', 'https://example.com/',
     b'__Host-a=1'),
    ('https://example.com/', '__Http-a=1; Secure; HttpOnly; Domain=example.com',
     'https://example.com/', b'__Http-a=1'),
    ('https://example.com/', '__http-a=1; Secure', 'https://example.com/', None),
    ('https://example.com/', '__Http-a=1; HttpOnly', 'https://example.com/', None),
    ('https://example.com/', '__Host-Http-a=1; Secure; HttpOnly; Path=/',
     'https://example.com/', b'__Host-Http-a=1'),
    ('https://example.com/', '__HOST-HTTP-a=1; Secure; Path=/', 'https://example.com/', None),
    ('https://example.com/', '__Host-Http-a=1; Secure; HttpOnly', 'https://example.com/', None),
    ('https://example.com/', '__Host-Http-a=1; Secure; HttpOnly; Path=/; Domain=example.com',
     'https://example.com/', None),
    ('http://example.com/', '__Secure-a=1; Secure', 'https://example.com/', None),
    # The value of a nameless cookie looks like a name to a server.
    ('https://example.com/', '=__Secure-a=1; Secure', 'https://example.com/', None),
    ('https://example.com/', '__Host-a; Secure; Path=/', 'https://example.com/', None),
    ('https://example.com/', '=__http-a=1; Secure; HttpOnly', 'https://example.com/', None),
    ('https://example.com/', 'a=__Host-', 'https://example.com/', b'a=__Host-'),
    # Names and values.
    (URL, 'a=', URL, b'a='),
    (URL, 'a', URL, b'a'),
    (URL, '=1', URL, b'1'),
    (URL, ' = a=b ', URL, b'a=b'),
    (URL, 'a; b=2', URL, b'a'),
    (URL, '', URL, None),
    (URL, '=', URL, None),
    (URL, ' = ; Path=/', URL, None),
    (URL, '; Path=/', URL, None),
    (URL, ' a = b=c ,"d"\t;x', URL, b'a=b=c ,"d"'),
    (URL, 'a="1; 2"', URL, b'a="1'),
    (URL, 'a=\xe9\xff', URL, b'a=\xe9\xff'),
    (URL, 'a=1\x012', URL, None),
    (URL, 'a=1\t2', URL, b'a=1\t2'),
    (URL, '\ta \t=\t 1 \t', URL, b'a=1'),
    (URL, 'a\x7f=1', URL, None),
    (URL, 'a=1; Path=/\x01', URL, None),
    (URL, 'a=1; Unknown=\x1f', URL, None),
    (URL, 'a=' + 'x' * 4095, URL, b'a=' + b'x' * 4095),
    (URL, 'a=' + 'x' * 4096, URL, None),
    (URL, 'x' * 4096, URL, b'x' * 4096),
    (URL, 'x' * 4097, URL, None),
    (URL, 'x' * 4097 + '=', URL, None),
    (URL, 'a=1; Path=/' + 'x' * 1024, URL, b'a=1'),
    (URL, 'a=1; Domain=other.com; Domain=' + 'x' * 1025, URL, None),
    (URL, 'a=1; Version=1; Port="81"; SameSite=Strict; Unknown', URL, b'a=1'),
])
@on_one_loop
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
        await visit(URL, 'a=1; Path=/', 'b=2; Path=/a', 'c=3; Path=/a/b', 'd=4; Path=/a',
                    'e=5; Path=/a; Domain=example.com', 'f=6; Path=/a')
        await visit(URL, 'b=7; Path=/a')
        assert await visit(URL) == b'c=3; b=7; d=4; e=5; f=6; a=1'


# With many paths in the jar, those that match are not found in the same way as with few.
@pytest.mark.parametrize('others', [(), tuple(f'/other{number}' for number in range(100))])
@on_one_loop
async def test_how_many_paths_the_jar_has_does_not_matter(others):
    jar = CookieJar()
    for path in ('/', '/a/', '/a/b', '/a/b/', '/a/b//c', '/a/b/c', '/a/bc', '/b', *others):
        jar.set_cookie(cookie_of('x', path, path=path))
    jar.set_cookie(cookie_of('y', '/a/b', '.example.com', '/a/b'))
    async with web(jar) as visit:
        for url, sent in (
                ('/a/b//c', b'x=/a/b//c; x=/a/b/; x=/a/b; y=/a/b; x=/a/; x=/'),
                ('/a/b/c/d/e/f/g/h/i', b'x=/a/b/c; x=/a/b/; x=/a/b; y=/a/b; x=/a/; x=/'),
                ('/a/b?/a/bc', b'x=/a/b; y=/a/b; x=/a/; x=/'),
                ('/a', b'x=/'),
                ('?/b', b'x=/'),
                ('#/b', b'x=/'),
                ('', b'x=/')):
            assert await visit(f'http://www.example.com{url}') == sent


@on_loops
async def test_a_nameless_cookie_replaces_the_nameless_one():
    jar = CookieJar()
    async with web(jar) as visit:
        await visit(URL, '=a', 'a=1', 'b=2', 'c')
        assert await visit(URL) == b'c; a=1; b=2'
        assert [(cookie.name, cookie.value) for cookie in jar] == [
            ('', 'c'), ('a', '1'), ('b', '2')]
        await visit(URL, '=; Max-Age=0')
        assert await visit(URL) == b'c; a=1; b=2'
        await visit(URL, 'any; Max-Age=0')
        assert await visit(URL) == b'a=1; b=2'


@pytest.mark.parametrize('url, is_loopback', [
    ('http://localhost/', True),
    ('http://LOCALHOST.:81/', True),
    ('http://a.b.localhost/', True),
    ('http://127.0.0.1/', True),
    ('http://127.200.3.255/', True),
    ('http://[::1]/', True),
    ('http://[0:0:0:0:0:0:0:1]/', True),
    ('http://www.example.com/', False),
    ('http://notlocalhost/', False),
    ('http://localhost.example.com/', False),
    ('http://127.example.com/', False),
    ('http://127.0.0.1.example.com/', False),
    ('http://128.0.0.1/', False),
    ('http://[::2]/', False),
    ('http://[::ffff:127.0.0.1]/', False),
])
@on_loops
async def test_loopback_is_secure_if_that_is_wanted(url, is_loopback):
    for wanted in (False, True):
        jar = CookieJar()
        async with web(jar, loopback_is_secure=wanted) as visit:
            await visit(url, 'a=1; Secure', '__Host-b=2; Secure; Path=/', 'c=3')
            kept = b'a=1; __Host-b=2; c=3' if wanted and is_loopback else b'c=3'
            assert await visit(url) == kept
            # A cookie that is in the jar already is sent.
            for cookie in jar:
                cookie.secure = True
            assert await visit(url) == (kept if wanted and is_loopback else None)


@on_loops
async def test_what_is_only_for_browsers_can_be_seen_in_the_jar():
    jar = CookieJar()
    async with web(jar) as visit:
        await visit(URL, 'a=1; SameSite=STRICT; HttpOnly', 'b=2; samesite=lax', 'c=3; SameSite=x',
                    'd=4', 'e=5; SameSite=none; SameSite=x', 'f=6; SameSite=None')
        assert await visit(URL) == b'a=1; b=2; c=3; d=4; e=5; f=6'
    assert [cookie.get_nonstandard_attr('SameSite') for cookie in jar] == [
        'Strict', 'Lax', None, None, None, 'None']
    assert [cookie.has_nonstandard_attr('HTTPOnly') for cookie in jar] == [True] + [False] * 5


@on_loops
async def test_a_cookie_replaces_the_one_of_its_name_domain_and_path():
    jar = CookieJar()
    async with web(jar) as visit:
        await visit(URL, 'a=1', 'a=2; Domain=example.com', 'a=3; Path=/', 'A=4')
        await visit(URL, 'a=5')
        assert await visit(URL) == b'a=5; a=2; A=4; a=3'
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
async def test_what_came_with_tls_and_has_expired_can_be_set_without(monkeypatch):
    now = time.time()
    async with web(CookieJar()) as visit:
        await visit('https://www.example.com/', 'a=1; Secure; Max-Age=60')
        await visit('https://sub.example.com/', 'b=2; Secure; Max-Age=60')
        await visit('http://www.example.com/', 'a=3', 'b=4; Domain=example.com')
        assert await visit('http://www.example.com/') is None
        monkeypatch.setattr(time, 'time', lambda: now + 62)
        await visit('http://www.example.com/', 'a=3', 'b=4; Domain=example.com')
        assert await visit('http://www.example.com/') == b'a=3; b=4'


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


# 2019-08-07 08:09:10
MOMENT = 1565165350
DATES = [
    # As servers write them.
    ('Wed, 07 Aug 2019 08:09:10 GMT', MOMENT),
    ('Wed, 07-Aug-2019 08:09:10 GMT', MOMENT),
    ('Wednesday, 07-Aug-19 08:09:10 GMT', MOMENT),
    ('Wed Aug  7 08:09:10 2019', MOMENT),
    ('Wed, 07 Aug 2019 08:09:10 -0500', MOMENT),
    ('Wed, 07 Aug 2019 08:09:10 EST', MOMENT),
    ('Wed Aug 07 2019 08:09:10 GMT+0200 (Central European Summer Time)', MOMENT),
    ('07 Aug 2019 08:09:10', MOMENT),
    # The order does not count.
    ('08:09:10 7 Aug 2019', MOMENT),
    ('2019 08:09:10 Aug 7', MOMENT),
    ('2019 8:9:10 Aug 7', MOMENT),
    ('7 2019 Aug 08:09:10', MOMENT),
    ('Aug 7 2019 08:09:10', MOMENT),
    ('august 7th 2019 8:9:10', MOMENT),
    ('Wed 7 19 Aug 08:09:10', MOMENT),
    ('19 Aug 07 08:09:10', 1187510950),  # a number that can be a day is one
    ('19 Aug 7 08:09:10', None),
    # Years.
    ('07 Aug 19 08:09:10', MOMENT),
    ('07 Aug 019 08:09:10', MOMENT),
    ('01 Jan 70 00:00:10', 10),
    ('01 Jan 69 00:00:00', 3124224000),
    ('01 Jan 99 00:00:00', 915148800),
    ('01 Jan 00 00:00:00', 946684800),
    ('01 Jan 100 00:00:00', None),
    ('01 Jan 1600 00:00:00', None),
    ('07 Aug 20190 08:09:10', None),
    ('07 Aug 2 08:09:10', None),
    ('07 Aug 2019x 08:09:10', MOMENT),
    # Days, months and times.
    ('7 Aug 2019 08:09:10', MOMENT),
    ('7x Aug 2019 08:09:10', MOMENT),
    ('007 Aug 2019 08:09:10', None),
    ('29 Feb 2019 08:09:10', None),
    ('29 Feb 2020 00:00:00', 1582934400),
    ('00 Aug 2019 08:09:10', None),
    ('32 Aug 2019 08:09:10', None),
    ('07 AUGust 2019 08:09:10', MOMENT),
    ('07 Auf 2019 08:09:10', None),
    ('07 08 2019 08:09:10', None),
    ('2019-08-07T08:09:10Z', None),
    ('07 Aug 2019 8:9:10', MOMENT),
    ('07 Aug 2019 08:09:10.123', MOMENT),
    ('07 Aug 2019 08:09:10Z', MOMENT),
    ('07 Aug 2019 08:09:10:11', MOMENT),
    ('07 Aug 2019 08:09', None),
    ('07 Aug 2019 008:09:10', None),
    ('07 Aug 2019 08:09:100', None),
    ('07 Aug 2019 24:00:00', None),
    ('07 Aug 2019 08:60:10', None),
    ('07 Aug 2019 08:09:60', None),
    ('07 Aug 2019', None),
    ('Aug 2019 08:09:10', None),
    # The first of each counts.
    ('07 Aug 2019 08:09:10 08 Sep 2020 09:10:11', MOMENT),
    # What is between them, and what is not.
    ('\t07!Aug"2019#08:09:10$', MOMENT),
    ('07/Aug/2019[08:09:10]', MOMENT),
    ('07@Aug`2019~08:09:10', MOMENT),
    ('07Aug2019 08:09:10', None),
    ('07:Aug 2019 08:09:10', None),
    ('Aug\xe9 07\xe9 2019\xe9 08:09:10\xe9', MOMENT),
    ('07 Aug 2019 \xd9\xa0\xd9\xa8:09:10', None),
    ('', None),
    ('0', None),
    ('-1', None),
    ('never', None),
]


@pytest.mark.parametrize('date, expected', DATES)
@on_one_loop
async def test_dates(monkeypatch, date, expected):
    line = f'a=1; Expires={date}'
    moment = MOMENT if expected is None else expected
    monkeypatch.setattr(time, 'time', lambda: moment - 1)
    jar = CookieJar()
    async with web(jar) as visit:
        await visit(URL, line)
        assert [(cookie.expires, cookie.discard) for cookie in jar] == [
            (expected, expected is None)]
        # At its very moment, a cookie has expired.
        monkeypatch.setattr(time, 'time', lambda: moment)
        assert await visit(URL) == (b'a=1' if expected is None else None)
        await visit(URL, line)
        assert len(jar) == (expected is None)


@given(st.sampled_from(['19', '2019']).flatmap(
    lambda year: st.permutations(['Wed', '7', 'Aug', year, '08:09:10'])),
    st.lists(st.text('\t !"#$%&\'()*+,-./<=>?@[\\]^_`{|}~', min_size=1, max_size=3),
             min_size=5, max_size=5))
@settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None,
          suppress_health_check=list(HealthCheck))
def test_a_date_is_read_in_any_order_and_with_any_delimiters(parts, delimiters):
    if '19' in parts:
        assume(parts.index('7') < parts.index('19'))
    date = ''.join(itertools.chain(*zip(parts, delimiters, strict=True)))
    assert lowhaio_cookies.parse_date(date) == MOMENT


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


async def set_and_sent(set_by, then, path='', **options):
    """What is sent to a target after another one has set a cookie. Both are of one URL."""
    url, first = set_by
    jar = CookieJar()
    script = Answering(response(200, b'', b'set-cookie: a=1' + path.encode()), response(200))
    async with Server(script) as server, Server(script, context_for(*HOSTS)) as tls_server:
        async with pool(get_connection=connecting_to(http=server.port, https=tls_server.port),
                        get_ssl_context=trusting) as request:
            request = with_cookies(request, jar, **options)
            await request(b'GET', url, target=first)
            await request(b'GET', then[0], target=then[1])
    assert [head.split(b' ')[1] for head in script.heads] == [first, then[1]]
    return [(cookie.domain, cookie.path) for cookie in jar], value(script.heads[1], b'cookie')


@pytest.mark.parametrize('first, path, then, sent', [
    # A cookie without a path is for the directory of the one that is sent.
    (b'/a/[b]/c', '/a/[b]', b'/a/[b]/d', True),
    (b'/a/[b]/c', '/a/[b]', b'/a/%5Bb%5D/d', False),
    (b'/a/b?/c/d', '/a', b'/a?', True),
    (b'/a/b', '/a', b'/?/a/', False),
    (b'/a/b', '/a', b'*', False),
    (b'*', '/', b'/a', True),
    (b'/\xff/b', '/\xff', b'/\xff/c', True),
    (b'http://example.com/a/b?c', '/a', b'/a/d', True),
    (b'HTTP://EXAMPLE.com.:80', '/', b'http://example.com/a', True),
    (b'//other.com/a', '//other.com', b'//other.com/b', True),
])
@on_loops
async def test_the_path_is_that_of_the_target(first, path, then, sent):
    url = 'http://example.com/x/y'
    kept, cookie = await set_and_sent((url, first), (url, then))
    assert kept == [('example.com', path)]
    assert cookie == (b'a=1' if sent else None)


@pytest.mark.parametrize('url, target', [
    ('http://example.com/', b'http://other.com/'), ('https://example.com/', b'http://example.com/'),
    ('http://example.com/', b'https://example.com/'), ('http://example.com/', b'example.com:80'),
    ('http://example.com/', b'http://\xff/'), ('http://example.com/', b'?a')])
@on_loops
async def test_what_a_proxy_passes_on_has_no_cookies_and_sets_none(url, target):
    """All hosts behind it would share them."""
    assert await set_and_sent((url, target), (url, b'/')) == ([], None)
    assert await set_and_sent((url, b'/'), (url, target)) == ([('example.com', '/')], None)


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
async def test_of_a_domain_first_the_expired_go_and_secure_ones_last(monkeypatch):
    monkeypatch.setattr(lowhaio_cookies, 'MAX_PER_DOMAIN', 4)
    now = time.time()
    url = 'https://www.example.com/'
    async with web(CookieJar()) as visit:
        await visit(url, 'a=1; Secure', 'b=2', 'c=3; Max-Age=60; Path=/x', 'd=4')
        monkeypatch.setattr(time, 'time', lambda: now + 62)
        await visit(url, 'e=5')
        assert await visit(url) == b'a=1; b=2; d=4; e=5'
        await visit(url, 'f=6', 'g=7; Secure')
        assert await visit(url) == b'a=1; e=5; f=6; g=7'
        await visit('http://www.example.com/', *(f'h{index}=' for index in range(9)))
        assert await visit(url) == b'a=1; g=7; h7=; h8='


@on_loops
async def test_the_cookies_of_a_jar_are_bounded(monkeypatch):
    monkeypatch.setattr(lowhaio_cookies, 'MAX_COOKIES', 20)
    jar = CookieJar()
    for index in range(3):
        jar.set_cookie(cookie_of('a', '1', f'other{index}.com'))
    async with web(jar) as visit:
        await visit('http://other0.com/')
        for index in range(10):
            await visit(f'http://x{index}.com/', 'a=1')
        await visit('http://x0.com/')
        await visit('http://x1.com/', 'a=2')
        await visit('http://www.x2.com/', 'a=3; Domain=x2.com', 'b=4; Domain=x2.com')
        for index in range(10, 15):
            await visit(f'http://x{index}.com/', 'a=1')
        assert len(jar) == 20
        # Domains that nobody has asked for go first, and then those used longest ago.
        gone = []
        for index in range(15, 20):
            before = {cookie.domain for cookie in jar}
            await visit(f'http://x{index}.com/', 'a=1')
            gone.extend(before - {cookie.domain for cookie in jar})
        assert gone == ['other1.com', 'other2.com', 'other0.com', 'x2.com', 'x3.com']
        assert await visit('http://x2.com/') == b'a=3; b=4'
        for index in range(100):
            await visit(f'http://y{index}.com/', 'a=1', 'b=2')
            await visit('http://x0.com/')
            assert 19 <= len(jar) <= 20
        assert await visit('http://x0.com/') == b'a=1'
        assert await visit('http://x1.com/') is None
        # Cookies that servers delete do not make others go.
        await visit('http://y99.com/', 'a=; Max-Age=0', 'b=; Max-Age=0')
        await visit('http://y98.com/', 'c=3', 'a=; Max-Age=0', 'b=; Max-Age=0', 'c=; Max-Age=0')
        before = len(jar)
        await visit('http://y100.com/', 'a=1', 'b=2', 'c=3')
        assert len(jar) == before + 3 <= 20


@on_loops
async def test_what_others_put_into_a_jar_later_is_left_there(monkeypatch):
    monkeypatch.setattr(lowhaio_cookies, 'MAX_COOKIES', 4)
    jar = CookieJar()
    async with web(jar) as visit:
        for index in range(5):
            jar.set_cookie(cookie_of('a', '1', f'x{index}.com'))
        for index in range(5):
            assert await visit(f'http://x{index}.com/') == b'a=1'
        await visit('http://x0.com/', 'b=2')
        for index in range(4):
            await visit(f'http://y{index}.com/', 'a=1')
        assert [cookie.domain for cookie in jar] == [
            *(f'x{index}.com' for index in range(1, 5)), *(f'y{index}.com' for index in range(4))]
        # After others have made room, nothing that came since has to go.
        jar.clear()
        for index in range(4):
            await visit(f'http://z{index}.com/', 'a=1')
        assert len(jar) == 4
        await visit('http://z4.com/', 'a=1')
        assert [cookie.domain for cookie in jar] == [f'z{index}.com' for index in range(1, 5)]


@on_loops
async def test_a_jar_is_bounded_for_all_that_share_it(monkeypatch):
    monkeypatch.setattr(lowhaio_cookies, 'MAX_COOKIES', 20)
    jar = CookieJar()
    for index in range(60):
        async with web(jar) as visit:
            await visit(f'http://x{index}.com/', 'a=1')
            assert await visit(f'http://x{index}.com/') == b'a=1'
        assert len(jar) <= 20


class SeenCookie(Cookie):
    """A cookie that counts how often anything looks at it."""

    seen = 0

    def __getattribute__(self, name):
        if not name.startswith('__'):
            type(self).seen += 1
        return super().__getattribute__(name)


def full_jar(number):
    jar = CookieJar()
    for index in range(number):
        jar.set_cookie(SeenCookie(0, 'a', '1', None, False, f'x{index}.com', False, False, '/',
                                  True, True, 2 ** 40, False, None, None, {}))
    return jar


def steps_of(jar, set_cookies):
    """How many instructions the layer takes for a response and for a request."""
    async def answer(*args, headers, **kwargs):
        sent.append(headers)
        return b'200', tuple((b'set-cookie', line) for line in set_cookies), None

    def trace(frame, event, _):
        if frame.f_code.co_filename != lowhaio_cookies.__file__:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        counts[-1] += event == 'opcode'
        return trace

    def step():
        with pytest.raises(StopIteration):
            request(b'GET', 'http://www.example.com/').send(None)

    sent = []
    counts = [0]
    request = with_cookies(answer, jar)
    # Tracing may begin in the middle of a call.
    previous = sys.gettrace()
    # CPython 3.12 looks at this only when tracing starts.
    sys._getframe().f_trace_opcodes = True
    sys.settrace(trace)
    try:
        for _ in range(4):
            step()
        counts[:] = [0]
        step()
    finally:
        sys.settrace(previous)
    assert sent[-1][0][1].startswith(b'a=1; ')
    return counts[0]


@pytest.mark.parametrize('set_cookies', [
    (b'a=1', b'b=2; Max-Age=60'),
    (b'a=1', b'b=2; Domain=www.example.com', b'c=3; Max-Age=0'),
])
def test_the_work_does_not_grow_with_the_cookies_of_other_domains(set_cookies):
    few, many = full_jar(3), full_jar(3000)
    SeenCookie.seen = 0
    steps = steps_of(few, set_cookies)
    assert steps > 100
    assert steps_of(many, set_cookies) == steps
    assert SeenCookie.seen == 0


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


# As curl 7.88 writes it for `a=1`, `b=2; Secure`, `c=3; Max-Age=…; HttpOnly` and
# `d=4; Domain=…`; its `::1` is for `http://[::1]:8080/`.
CURL = """\
# Netscape HTTP Cookie File
# https://curl.se/docs/http-cookies.html
# This file was generated by libcurl! Edit at your own risk.

#HttpOnly_www.example.com	FALSE	/	FALSE	{later}	c	3
www.example.com	FALSE	/	TRUE	0	b	2
www.example.com	FALSE	/	FALSE	0	a	1
.example.com	TRUE	/	FALSE	0	d	4
www.example.com	FALSE	/	FALSE	1	e	5
::1	FALSE	/	FALSE	0	f	6
"""


@on_loops
async def test_the_sessions_of_the_files_of_curl(tmp_path):
    path = tmp_path / 'cookies'
    path.write_text(CURL.format(later=int(time.time()) + 1000))
    jar = MozillaCookieJar(str(path))
    jar.load(ignore_discard=True, ignore_expires=True)
    async with web(jar) as visit:
        assert await visit('https://www.example.com/') == b'c=3; b=2; a=1; d=4'
        assert await visit('http://www.example.com/') == b'c=3; a=1; d=4'
        assert await visit('http://example.com/') == b'd=4'
        assert await visit('http://[::1]:8080/') == b'f=6'
        assert await visit('http://[::2]:8080/') is None
        await visit('http://[::1]:8080/', 'f=7', 'g=8')
        assert await visit('http://[::1]/') == b'f=7; g=8'
    jar.save(ignore_discard=True, ignore_expires=True)
    lines = path.read_text().splitlines()
    # CPython 3.14 reads the end of a session as the absence of one, and writes that.
    assert {f'www.example.com\tFALSE\t/\tTRUE\t{expires}\tb\t2'
            for expires in ('0', '')} & set(lines)
    assert '::1\tFALSE\t/\tFALSE\t\tf\t7' in lines


@on_loops
async def test_nameless_cookies_of_files(tmp_path):
    path = str(tmp_path / 'cookies')
    jar = MozillaCookieJar(path)
    async with web(jar) as visit:
        await visit(URL, 'a', 'b=2')
        await visit('http://other.com/', 'c')
    jar.save(ignore_discard=True)
    jar = MozillaCookieJar(path)
    jar.load(ignore_discard=True)
    async with web(jar) as visit:
        assert await visit(URL) == b'a; b=2'
        await visit(URL, 'd')
        assert await visit(URL) == b'b=2; d'
        await visit('http://other.com/', '=x; Max-Age=0')
        assert await visit('http://other.com/') is None


@on_loops
async def test_what_others_do_with_the_jar_is_seen(tmp_path):
    jar = MozillaCookieJar(str(tmp_path / 'cookies'))
    async with web(jar) as visit:
        await visit(URL, 'a=1; Max-Age=60; Path=/', 'b=2')
        jar.save()
        jar.set_cookie(cookie_of('c', '3'))
        assert await visit(URL) == b'b=2; c=3; a=1'
        jar.clear_session_cookies()
        assert await visit(URL) == b'c=3; a=1'
        jar.clear()
        assert await visit(URL) is None
        jar.load()
        assert await visit(URL) == b'a=1'
        await visit(URL, 'a=2; Path=/')
        assert await visit(URL) == b'a=2'
        jar.revert()
        assert await visit(URL) == b'a=1'
        jar.clear('www.example.com', '/', 'a')
        assert await visit(URL) is None


class Lenient(DefaultCookiePolicy):
    def set_ok(self, cookie, request):
        return True


@pytest.mark.parametrize('url, set_cookie, then', [
    (URL, 'a=1; Domain=xample.com', 'http://xample.com/'),
    (URL, 'a=1; Domain=other.com', 'http://other.com/'),
    (URL, 'a=1; Domain=com', 'http://other.com/'),
    (URL, 'a=1; Domain=sub.www.example.com', 'http://sub.www.example.com/'),
    (URL, 'a=1; Secure', 'http://www.example.com/'),
    ('http://127.0.0.1/', 'a=1; Domain=0.0.1', 'http://126.0.0.1/'),
])
@on_loops
async def test_the_scope_does_not_depend_on_the_policy(url, set_cookie, then):
    jar = CookieJar(Lenient())
    async with web(jar) as visit:
        await visit(url, set_cookie)
        assert await visit(then) is None
    assert list(jar) == []


@pytest.mark.parametrize('set_cookie, then', [
    ('a=1', 'http://sub.www.example.com/'),
    ('a=1; Path=/a', 'http://www.example.com/ab'),
])
@on_loops
async def test_what_is_sent_does_not_depend_on_the_policy(set_cookie, then):
    async with web(CookieJar(Lenient())) as visit:
        await visit(URL, set_cookie)
        assert await visit(then) is None


@on_loops
async def test_no_repr_shows_a_value_or_a_path():
    class Watching(DefaultCookiePolicy):
        def set_ok(self, cookie, request):
            frame = inspect.currentframe()
            while frame is not None:
                shown.update(repr(each) for each in frame.f_locals.values()
                             if type(each).__module__ == 'lowhaio_cookies')
                frame = frame.f_back
            return super().set_ok(cookie, request)

    shown = set()
    async with web(CookieJar(Watching())) as visit:
        for url in ('http://www.example.com/hidden', 'https://example.com/hidden?hidden'):
            await visit(url, 'name=hidden; Path=/hidden')
    assert shown == {
        '<Place www.example.com is_secure=False>',
        '<Place example.com is_secure=True>',
        "<SetCookie 'name' domain='' is_secure=False>",
        '<Store 0 cookies of 0 domains>',
        '<Store 1 cookies of 1 domains>',
    }


@on_loops
async def test_the_policy_of_the_jar_is_asked():
    jar = CookieJar(DefaultCookiePolicy(blocked_domains=['.example.com']))
    async with web(jar) as visit:
        await visit(URL, 'a=1')
        assert await visit(URL) is None
        await visit('http://other.com/', 'a=1')
        assert await visit('http://other.com/') == b'a=1'
        jar.set_policy(DefaultCookiePolicy(allowed_domains=['::1']))
        await visit('http://[::1]:81/', 'a=1')
        assert await visit('http://[::1]/') == b'a=1'
        await visit('http://[::2]/', 'a=1')
        assert await visit('http://[::2]/') is None


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
    store = lowhaio_cookies.Store(jar)
    place = lowhaio_cookies.Place('https://www.example.com/x/y')
    store.keep(place, [line.encode('latin-1') for line in values])
    for cookie in jar:
        assert cookie.domain in ('www.example.com', '.www.example.com', '.example.com')
        assert cookie.path.startswith('/')
    for _, field in store.cookie_field(place):
        assert all((byte >= 0x20 or byte == 0x09) and byte != 0x7f for byte in field)


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
    ('http://h:x/', ()), ('http://' + 'ü' * 100, ()), ('http://' + 'a.' * 200 + 'b', ()),
    ('http://[::1%]/', ()), ('http://[1]/', ()), ('http://h/', 1), ('http://h/', (1,)),
    ('http://h/', ((1, 2),)), ('http://h/\ud800', ()),
])
@on_loops
async def test_bad_requests_are_refused(url, headers):
    async with pool() as request:
        with pytest.raises(HttpConnectionError, match=r'refused: (url|headers) must'):
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


@on_loops
async def test_an_empty_jar_that_others_fill_counts_from_the_next_request_on():
    jar, filled = CookieJar(), CookieJar()
    async with web(filled) as visit:
        await visit(URL, 'a=1; Path=/')
    async with web(jar) as visit:
        assert await visit(URL) is None
        for cookie in filled:
            jar.set_cookie(cookie)
        assert await visit(URL) == b'a=1'
        jar.clear()
        assert await visit(URL) is None
        assert await visit(URL, 'b=2') is None
        assert await visit(URL) == b'b=2'


@on_loops
async def test_a_url_that_is_none_is_refused_by_lowhaio_also_if_the_jar_has_cookies():
    jar = CookieJar()
    async with web(jar) as visit:
        await visit(URL, 'a=1')
        with pytest.raises(HttpConnectionError, match='refused: url must'):
            await visit('ftp://www.example.com/')
        assert await visit(URL) == b'a=1'
