"""Measures what cookies cost, in microseconds, with 3,000 of them in the jar, of 500 domains.

It compares lowhaio-cookies, http.cookiejar and the jar of aiohttp.

    python benchmarks/cookies.py

Nothing is sent. For a request, the `cookie` field is made, and for a response, its `set-cookie` is
kept, over https or http. The column "longest" is about responses that add cookies to a full jar,
so that the layer must find those to drop. The other jars have no such limit.
"""
import asyncio
import gc
import itertools
import platform
import statistics
import sys
import time
from http.cookiejar import CookieJar
from http.cookies import SimpleCookie
from pathlib import Path
from urllib.request import Request

import aiohttp
from yarl import URL

sys.path.insert(0, str(Path(__file__).parents[1] / 'layers' / 'cookies'))

from lowhaio_cookies import with_cookies  # noqa: E402

DOMAINS = 500
PER_DOMAIN = 6
NUMBER = 1000
SET_COOKIE = 'c%d=%s; Path=/; Max-Age=86400'
CHANGED = 'c0=new; Domain=site7.example.com; Path=/; Max-Age=86400'


def url(domain, scheme='https'):
    return f'{scheme}://site{domain}.example.com/a/b'


class Message:
    """As much of a response as http.cookiejar needs."""

    def __init__(self, set_cookie):
        self.set_cookie = set_cookie

    def info(self):
        return self

    def get_all(self, name, default):
        return [self.set_cookie] if name == 'Set-Cookie' else default


class Lowhaio:
    def __init__(self):
        self.fields = ()
        self.request = with_cookies(self.answer, CookieJar())

    async def answer(self, method, url, headers=(), **_):
        self.sent = headers
        return b'200', self.fields, None

    def send(self, url):
        self.fields = ()
        self.run(url)
        return self.sent[0][1].decode()

    def keep(self, url, set_cookie):
        self.fields = ((b'set-cookie', set_cookie.encode()),)
        self.run(url)

    def run(self, url):
        # Nothing in the coroutine waits, so it ends in one step.
        try:
            self.request(b'GET', url).send(None)
        except StopIteration:
            return


class Cookiejar:
    def __init__(self):
        self.jar = CookieJar()

    def send(self, url):
        request = Request(url)
        self.jar.add_cookie_header(request)
        return request.get_header('Cookie')

    def keep(self, url, set_cookie):
        self.jar.extract_cookies(Message(set_cookie), Request(url))


class Aiohttp:
    def __init__(self):
        self.jar = aiohttp.CookieJar()

    def send(self, url):
        return self.jar.filter_cookies(URL(url)).output(header='', sep=';')

    def keep(self, url, set_cookie):
        self.jar.update_cookies(SimpleCookie(set_cookie), URL(url))


def microseconds(call, *args):
    times = []
    for _ in range(NUMBER):
        start = time.thread_time()
        call(*args)
        times.append((time.thread_time() - start) * 1e6)
    return statistics.median(times)


def longest(client):
    """The longest time that it takes to add a cookie of a new domain to a full jar.

    So many are added that the jar has only these in the end. This is done in several rounds, and
    the least result counts, because a disturbance does not come in every round.
    """
    maxima = []
    new = itertools.count(DOMAINS)
    for _ in range(5):
        times = []
        for domain in itertools.islice(new, 4 * NUMBER):
            start = time.thread_time()
            client.keep(url(domain), SET_COOKIE % (0, 'x'))
            times.append((time.thread_time() - start) * 1e6)
        maxima.append(max(times))
    return min(maxima)


async def main():
    print(f'{platform.python_implementation()} {platform.python_version()}, {platform.machine()}')
    print(f'{"":20}{"request":>10}{"response":>10}{"of http":>10}{"longest":>10}')
    # Otherwise the collector would look at all that was imported in the middle of a measurement.
    gc.collect()
    gc.freeze()
    for client in (Lowhaio(), Cookiejar(), Aiohttp()):
        for domain in range(DOMAINS):
            for index in range(PER_DOMAIN):
                client.keep(url(domain), SET_COOKIE % (index, 'x' * 30))
        assert client.send(url(7)).count('=' + 'x' * 30) == PER_DOMAIN
        figures = (microseconds(client.send, url(7)), microseconds(client.keep, url(7), CHANGED),
                   microseconds(client.keep, url(7, 'http'), CHANGED))
        last = f'{longest(client):10.0f}' if isinstance(client, Lowhaio) else f'{"":10}'
        print(f'{type(client).__name__:20}' + ''.join(f'{figure:10.0f}' for figure in figures)
              + last)


if __name__ == '__main__':
    asyncio.run(main())
