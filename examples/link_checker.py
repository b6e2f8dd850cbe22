"""Finds the broken links of a website.

    python examples/link_checker.py https://www.example.com/
    python examples/link_checker.py https://www.example.com/ --max-pages 1000 --max-depth 5

It reads the pages of one site: those with the scheme, host and port of the URL, or of where that
redirects to. It follows the links between them, and asks once for everything else that they link
to. Each broken link is printed with its page and line, and then the exit code is 1.

It does not ask for what a robots.txt disallows.
"""
import argparse
import asyncio
import re
import sys
from collections import defaultdict
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag, urljoin, urlsplit
from urllib.robotparser import RobotFileParser

from lowhaio_compression import decompressed
from lowhaio_redirect import redirectable
from lowhaio_retry import retry
from tqdm import tqdm

from lowhaio import HttpConnectionError, HttpDataError, HttpError, Pool

USER_AGENT = 'lowhaio-link-checker'
HEADERS = ((b'user-agent', USER_AGENT.encode()), (b'accept', b'*/*'))

# How many bytes of a page, and of a robots.txt (RFC 9309 2.5), are read.
MAX_PAGE = 8 * 1024 * 1024
MAX_ROBOTS = 512 * 1024

LINKS = {'a': 'href', 'area': 'href', 'link': 'href', 'iframe': 'src', 'img': 'src',
         'script': 'src', 'source': 'src', 'audio': 'src', 'video': 'src'}
NEVER_PAGES = frozenset(('img', 'script', 'source', 'audio', 'video'))


class Disallowed(Exception):
    """The robots.txt of an origin disallows a URL."""


class Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, url, text):
        super().__init__()
        self.url = url
        self.base = None
        self.found = []
        self.anchors = {'', 'top'}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        # If an attribute comes twice, the first one counts.
        attrs = {name: value or '' for name, value in reversed(attrs)}
        self.anchors.add(attrs.get('id', ''))
        if tag == 'a':
            self.anchors.add(attrs.get('name', ''))
        if tag == 'base' and self.base is None:
            self.base = attrs.get('href')
        # Only the origin of a hint has a meaning.
        is_hint = tag == 'link' and attrs.get('rel', '').lower() in ('preconnect', 'dns-prefetch')
        if LINKS.get(tag) in attrs and not is_hint:
            self.found.append((tag, attrs[LINKS[tag]].strip(), self.getpos()[0]))

    def links(self):
        """The tag, the URL, the fragment and the line of each link."""
        for tag, reference, line in self.found:
            try:
                base = urljoin(self.url, (self.base or '').strip())
                url, fragment = urldefrag(urljoin(base, reference))
                url = normal(url)
            except ValueError:
                # The request for it will fail with an error that tells what is wrong.
                url, fragment = reference, ''
            else:
                if urlsplit(url).scheme not in ('http', 'https'):
                    continue
            yield tag, url, fragment, line


class Checker:
    def __init__(self, request, args, bar):
        self.plain_request = decompressed(redirectable(request))
        # This layer is inside of the redirects, since a redirect may lead to a disallowed URL.
        self.request = decompressed(redirectable(self.obeying(request)))
        self.args = args
        self.bar = bar
        self.site = None
        self.problems = {}  # by URL: what is wrong with it, or None
        self.pages = {}  # by URL
        self.pages_left = args.max_pages
        self.places = defaultdict(set)  # by URL: page, line and fragment of each link to it
        self.disallowed = set()
        self.robots = {}  # by origin
        self.locks = defaultdict(asyncio.Lock)

    async def check_all(self, start):
        """Check all URLs, level by level, so that each page is reached on the shortest path."""
        level = {start: 'a'}
        for depth in range(self.args.max_depth + 2):
            # The pages of the last level are only asked for, and not read.
            urls = iter(level.items())
            async with asyncio.TaskGroup() as group:
                for _ in range(self.args.concurrency):
                    group.create_task(self.work(urls, depth <= self.args.max_depth))
            level = self.next_level(level)
            self.bar.total += len(level)

    def next_level(self, level):
        found = {}
        for page in (self.pages[url] for url in level if url in self.pages):
            for tag, url, fragment, line in page.links():
                self.places[url].add((page.url, line, fragment))
                # A URL that is an image in one page may be a link to a page in another one.
                if url not in self.problems and (url not in found or tag not in NEVER_PAGES):
                    found[url] = tag
        return found

    async def work(self, urls, may_read):
        for url, tag in urls:
            try:
                self.problems[url] = await self.check(url, may_read and tag not in NEVER_PAGES)
            except Disallowed:
                self.problems[url] = None
                self.disallowed.add(url)
            except (HttpError, ValueError) as error:
                self.problems[url] = f'{type(error).__name__}: {error}'
            self.bar.update()

    async def check(self, url, may_read):
        """What is wrong with a URL, or None. A page of the site is read, too."""
        if may_read and self.pages_left and self.site in (None, origin_of(url)):
            return await self.read(url)
        code, _, body = await self.request(b'HEAD', url, headers=HEADERS)
        if code >= b'400':
            # Some servers do not know HEAD.
            code, _, body = await self.request(b'GET', url, headers=HEADERS)
            await body.aclose()
        return None if code < b'400' else code.decode()

    async def read(self, url):
        hops = []
        code, headers, body = await self.request(b'GET', url, headers=HEADERS, hops=hops)
        self.site = self.site or origin_of(hops[-1])
        kind = dict(headers).get(b'content-type', b'').lower()
        if (code == b'200' and kind.startswith((b'text/html', b'application/xhtml'))
                and self.pages_left and origin_of(hops[-1]) == self.site):
            self.pages_left -= 1
            self.pages[url] = Page(hops[-1], await text_of(body, MAX_PAGE))
        await body.aclose()
        return None if code < b'400' else code.decode()

    def obeying(self, request):
        """A layer that looks at the robots.txt first. It adds each URL asked for to `hops`."""
        async def obeying_request(method, url, *, hops=None, **kwargs):
            if not (await self.rules_of(origin_of(url))).can_fetch(USER_AGENT, url):
                raise Disallowed
            if hops is not None:
                hops.append(url)
            return await request(method, url, **kwargs)

        return obeying_request

    async def rules_of(self, origin):
        """The rules of an origin (RFC 9309 2.3.1).

        Without a robots.txt everything is allowed. If the server answers with an error of its own,
        nothing is.
        """
        async with self.locks[origin]:
            if origin not in self.robots:
                rules = RobotFileParser()
                try:
                    code, _, body = await self.plain_request(
                        b'GET', f'{origin}/robots.txt', headers=HEADERS)
                    text = await text_of(body, MAX_ROBOTS)
                    rules.disallow_all = code >= b'500'
                    rules.parse(text.splitlines() if code < b'300' else ())
                except HttpError:
                    # The requests to this origin will fail and tell what is wrong.
                    rules.allow_all = True
                self.robots[origin] = rules
            return self.robots[origin]

    def broken(self):
        """The page, line, URL and problem of each broken link."""
        for url, places in self.places.items():
            for page_url, line, fragment in places:
                problem = self.problems.get(url)
                anchors = self.pages[url].anchors if url in self.pages else None
                # Fragments that start like these are for a script, or search for a text.
                if (anchors is not None and not fragment.startswith(('/', '!', ':~:'))
                        and anchors.isdisjoint((fragment, unquote(fragment)))):
                    problem = 'there is no element with this id'
                if problem:
                    yield page_url, line, f'{url}#{fragment}' if fragment else url, problem


def normal(url):
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.lower(), path=parts.path or '/').geturl()


def origin_of(url):
    parts = urlsplit(url)
    return f'{parts.scheme}://{parts.netloc.lower()}'


async def text_of(body, limit):
    """The text of a body. Tags have the same bytes in all charsets that are in use."""
    data = bytearray()
    async for chunk in body:
        data += chunk
        if len(data) >= limit:
            await body.aclose()
    return data[:limit].decode(errors='replace')


async def run(args):
    request, close = Pool(max_connections=args.concurrency,
                          max_connections_per_origin=args.per_origin)
    request = retry(request, ((HttpConnectionError, (1,)), (HttpDataError, (0, 1))),
                    code_intervals=((b'429', (1, 2)), (b'503', (1, 2))), max_retry_after=10)
    with tqdm(total=1, unit=' URLs') as bar:
        checker = Checker(request, args, bar)
        try:
            await checker.check_all(args.url)
        finally:
            await close()
    broken = sorted(checker.broken())
    problem = checker.problems[args.url] or (
        'disallowed by robots.txt' if args.url in checker.disallowed else None)
    if problem:
        broken.insert(0, ('(the start)', 0, args.url, problem))
    for page_url, line, url, problem in broken:
        print(f'{page_url}:{line}: {url}: {problem}')
    print(f'{len(checker.problems)} URLs checked, {len(checker.pages)} pages read, '
          f'{len(checker.disallowed)} disallowed by robots.txt, {len(broken)} broken links')
    return not broken


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('url')
    for name, default, meaning in (
            ('--max-pages', 100, 'pages that are read'),
            ('--max-depth', 10, 'links from the first page to the last one that is read'),
            ('--concurrency', 16, 'requests at once'),
            ('--per-origin', 4, 'of them to one scheme, host and port')):
        parser.add_argument(name, type=int, default=default, metavar='N',
                            help=f'{meaning} (default: {default})')
    args = parser.parse_args()
    if min(args.concurrency, args.per_origin, args.max_pages, args.max_depth + 1) < 1:
        parser.error('numbers must be 1 or more, and --max-depth 0 or more')
    try:
        args.url = normal(urldefrag(args.url)[0])
    except ValueError as error:
        parser.error(str(error))
    if not re.match('https?://[^/]', args.url):
        parser.error('url must be a URL such as https://www.example.com/')
    try:
        sys.exit(not asyncio.run(run(args)))
    except KeyboardInterrupt:
        print('Interrupted', file=sys.stderr)
        sys.exit(130)


if __name__ == '__main__':
    main()
