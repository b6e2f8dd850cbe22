"""Cookies for lowhaio: kept in a jar of `http.cookiejar`, in the scope of RFC 6265.

::

    request, close = Pool()
    jar = http.cookiejar.CookieJar()
    request_with_cookies = with_cookies(request, jar)
    code, headers, body = await request_with_cookies(b'GET', 'https://example.com/')

The jar holds the cookies, and the caller owns it: what others put into it, load or clear counts
from the next request on. This layer decides which cookies of a response are kept, which of them
go to a request, and which go when there are too many.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import cache, lru_cache
from http.cookiejar import Cookie, CookieJar
from itertools import count
from math import inf
from operator import itemgetter, methodcaller
from typing import Any, TypeVar, cast
from urllib.parse import quote
from urllib.request import Request

from publicsuffixlist import PublicSuffixList

from lowhaio import Fields, Headers, canonical_host, empty_async_iterator

__all__ = ['with_cookies']

# The most characters of a name and its value, cookies of one domain, and cookies in all. RFC 6265
# 6.1 asks for no less than 4096, 50 and 3000. The most characters of an attribute and seconds of
# life are those of its successor, RFC 6265bis 5.6 and 5.5.
MAX_PAIR = 4096
MAX_PER_DOMAIN = 180
MAX_COOKIES = 3000
MAX_ATTRIBUTE = 1024
MAX_AGE = 400 * 24 * 60 * 60

# Numbers the cookies in the order in which they were created. A clock would not tell apart those
# that come in one response.
CREATED = count(1)

URL = re.compile(r'(https?)://(\[[^\[\]/?#@]*\]|[^:\[\]/?#@]+)(?::[0-9]*)?(?![^/?#])([^?#]*)',
                 re.IGNORECASE)
SLASH = re.compile('/')
# What lowhaio percent-encodes in a path before it sends it.
NOT_IN_PATH = re.compile(r"%(?![0-9A-Fa-f]{2})|[^A-Za-z0-9\-._~!$&'()*+,;=:@/%]")
LOOPBACK = re.compile(r'(?:.+\.)?localhost|127(?:\.[0-9]{1,3}){3}|::1')

SET_COOKIE = b'set-cookie'
# The name of a field. Mapped, it takes half the time of a loop, and most responses need no more.
NAME = itemgetter(0)

# A set-cookie that has one of these is ignored (RFC 6265bis 5.6).
CONTROL = re.compile(r'[\x00-\x08\x0a-\x1f\x7f]')
# What may be sent. A cookie that was loaded from a file, or set by others, may hold anything.
PAIR = re.compile(r'[\t\x20-\x3a\x3c-\x7e\x80-\xff]*')
SECONDS = re.compile('-?[0-9]+')
SAME_SITE = {'strict': 'Strict', 'lax': 'Lax', 'none': 'None'}

# The parts of a date: time, day, month and year. Each token is tried for them in this order
# (RFC 6265 5.1.1). What follows in the token is ignored, but a number must not go on with a digit.
DATE_TOKEN = re.compile(r'[^\x09\x20-\x2f\x3b-\x40\x5b-\x60\x7b-\x7e]+')
MONTHS = ('jan', 'feb', 'mar', 'apr', 'may', 'jun', 'jul', 'aug', 'sep', 'oct', 'nov', 'dec')
DATE_PARTS = (
    re.compile(r'([0-9]{1,2}):([0-9]{1,2}):([0-9]{1,2})(?![0-9])'),
    re.compile(r'([0-9]{1,2})(?![0-9])'),
    re.compile(f'({"|".join(MONTHS)})', re.IGNORECASE),
    re.compile(r'([0-9]{2,4})(?![0-9])'),
)

Response = tuple[bytes, Fields, Any]
# The cookies of one domain, by path and name.
Paths = dict[str, dict[str, Cookie]]
# A layer returns a function of the type that it was given: same arguments, same response.
AnyRequest = TypeVar('AnyRequest', bound=Callable[..., Awaitable[Response]])


def with_cookies(request: AnyRequest, jar: CookieJar, *,
                 loopback_is_secure: bool = False) -> AnyRequest:
    """A `request` that sends the cookies of a jar, and keeps those of the responses in it.

    - `jar`: an `http.cookiejar.CookieJar`. Its policy is asked before a cookie is kept. Anything
      else raises TypeError.
    - `loopback_is_secure`: whether `http` to this machine (`localhost`, names below it,
      127.0.0.0/8 and ::1) counts as `https`. Then `Secure` cookies are kept and sent there, as
      browsers do.

    Headers that have a `cookie` already are sent as they are. A `set-cookie` that is refused is
    ignored, so this layer adds no errors to those of the request. See RFC 6265 and RFC 6265bis.
    """
    if not callable(request):
        raise TypeError(f'request must be a coroutine function, got {type(request).__name__}')
    if not isinstance(jar, CookieJar):
        raise TypeError(f'jar must be an http.cookiejar.CookieJar, got {type(jar).__name__}')
    store = Store(jar)

    async def request_with_cookies(
            method: bytes, url: str, params: Any = (), headers: Headers = (),
            body: Any = empty_async_iterator, body_args: Any = (), body_kwargs: Any = (),
            **kwargs: Any) -> Response:
        sent, place = headers, None
        # While the jar is empty, it does not matter where the request goes.
        if store.domains:
            try:
                sent = tuple(headers)
                if not sent or not has_cookie(sent):
                    place = Place(url, kwargs.get('target'), loopback_is_secure)
            except MALFORMED:
                pass  # lowhaio refuses the arguments, and says why
            if place is not None:
                sent = (*sent, *store.cookie_field(place))
        # Most requests have no other keywords, and a call with ** takes longer.
        response = await (request(
            method, url, params=params, headers=sent, body=body, body_args=body_args,
            body_kwargs=body_kwargs, **kwargs,
        ) if kwargs else request(
            method, url, params=params, headers=sent, body=body, body_args=body_args,
            body_kwargs=body_kwargs))
        fields = response[1]
        if SET_COOKIE in map(NAME, fields):
            place = place or place_of(url, kwargs.get('target'), loopback_is_secure)
            if place is not None:
                store.keep(place, [
                    value for name, value in fields if name == SET_COOKIE][-MAX_PER_DOMAIN:])
        return response

    return cast(AnyRequest, request_with_cookies)


def has_cookie(headers: Fields) -> bool:
    return b'cookie' in [name.lower() for name, _ in headers]


# ---------------------------------------------------------------------- where a request goes

# What arguments raise that lowhaio refuses.
MALFORMED = (TypeError, ValueError, AttributeError)


def place_of(url: str, target: bytes | None, loopback_is_secure: bool) -> Place | None:
    """Where a request goes, or None if lowhaio refuses the URL and says why.

    It is also None if the target is for another host, of which this layer knows nothing.
    """
    try:
        return Place(url, target, loopback_is_secure)
    except MALFORMED:
        return None


class Place:
    """The parts of a URL, and of a request target, that decide which cookies are for it.

    `host` is canonical, `domains` are those whose cookies are for it, `path` is the path as it is
    sent, and `is_secure` tells whether `Secure` cookies may go there.
    """

    __slots__ = ('url', 'is_tls', 'is_secure', 'host', 'domains', 'sent_path')

    def __init__(self, url: str, target: bytes | None = None,
                 loopback_is_secure: bool = False) -> None:
        # The first slash that is not of the scheme ends the authority.
        end = url.find('/', len('https://'))
        self.url = url
        self.is_tls, self.is_secure, self.host, self.domains = server_of(
            url[:end] if end > 0 else url, loopback_is_secure)
        self.sent_path = None if target is None else self.path_of(target)

    @property
    def path(self) -> str:
        # Made when it is needed: most cookies are for all paths.
        if self.sent_path is None:
            match = cast(re.Match[str], URL.match(self.url))
            self.sent_path = NOT_IN_PATH.sub(
                lambda match: quote(match[0], errors='replace'), match[3]) or '/'
        return self.sent_path

    def path_of(self, target: bytes) -> str:
        """The path in a request target. `*` stands for that of the whole server.

        In absolute form a target names a host itself. Raises ValueError if that is another one,
        or has another scheme: a proxy passes such a request on, and its answer back.
        """
        if target == b'*':
            return '/'
        # A jar has the bytes of a path in this form.
        text = target.decode('latin-1')
        if not text.startswith('/'):
            match = URL.match(text)
            if match is None or canonical_host(match[2]) != self.host or \
                    (match[1].lower() == 'https') is not self.is_tls:
                raise ValueError('the target is not at the host of the URL')
            text = match[3]
        return text.partition('?')[0] or '/'

    def __repr__(self) -> str:
        # The path may hold what is secret.
        return f'<Place {self.host} is_secure={self.is_secure}>'

    def default_path(self) -> str:
        """The path of a cookie that comes without one (RFC 6265 5.1.4)."""
        return self.path.rpartition('/')[0] or '/'

    def as_request(self) -> Request:
        """The request in the form that the policy of the jar wants."""
        scheme = 'https' if self.is_tls else 'http'
        host = f'[{self.host}]' if ':' in self.host else self.host
        return Request(f'{scheme}://{host}{self.path}')


@lru_cache(maxsize=256)
def server_of(beginning: str, loopback_is_secure: bool,
              ) -> tuple[bool, bool, str, tuple[str, ...]]:
    """What a URL up to its path tells: `is_tls`, `is_secure`, `host` and `domains` of a place."""
    match = URL.match(beginning)
    if match is None:
        raise ValueError('no http:// or https://, or no host')
    is_tls = match[1].lower() == 'https'
    # This has IPv6 addresses without brackets, as curl has them in its files.
    host = canonical_host(match[2])
    is_secure = is_tls or loopback_is_secure and LOOPBACK.fullmatch(host) is not None
    return is_tls, is_secure, host, tuple(domains_of(host))


def is_address(host: str) -> bool:
    return ':' in host or host.rpartition('.')[2].isdigit()


def domains_of(host: str) -> Iterator[str]:
    """The domains whose cookies are for the host (RFC 6265 5.1.3).

    In a jar, a domain that begins with a dot has the cookies that are also for its subdomains.
    """
    yield host
    if not is_address(host):
        domain = '.' + host
        while domain:
            yield domain
            _, dot, parent = domain[1:].partition('.')
            domain = dot + parent


def matching(place: Place, paths: Paths) -> list[str]:
    """Those of a domain's paths whose cookies are for a request to this place."""
    if len(paths) == 1 and '/' in paths:
        return ['/']
    path = place.path
    if len(paths) <= path.count('/'):
        return [each for each in list(paths) if path_matches(path, each)]
    # So many are not looked through, since those that match are beginnings of the request's path.
    beginnings = {path}
    for match in SLASH.finditer(path):
        beginnings |= {path[:match.start()], path[:match.end()]}
    return [each for each in beginnings if each in paths]


def path_matches(path: str, cookie_path: str) -> bool:
    """Whether a cookie of that path is for a request of this path (RFC 6265 5.1.4)."""
    return path.startswith(cookie_path) and (
        cookie_path.endswith('/') or path[len(cookie_path):len(cookie_path) + 1] in ('', '/'))


# -------------------------------------------------------------------------- what a server says

class SetCookie:
    """What a `set-cookie` field says (RFC 6265 5.2, as RFC 6265bis 5.6 has changed it).

    If an attribute comes several times, the last one that makes sense counts.
    """

    __slots__ = ('name', 'value', 'expires', 'max_age', 'domain', 'path', 'is_secure',
                 'is_http_only', 'same_site')

    def __init__(self, name: str, value: str) -> None:
        self.name = name
        self.value = value
        self.expires: int | None = None
        self.max_age: int | None = None
        self.domain = ''
        self.path: str | None = None
        self.is_secure = False
        self.is_http_only = False
        self.same_site: str | None = None

    def __repr__(self) -> str:
        # The value is left out, because it may be a secret.
        return f'<SetCookie {self.name!r} domain={self.domain!r} is_secure={self.is_secure}>'

    def set_attribute(self, name: str, value: str) -> None:
        if name == 'expires':
            date = parse_date(value)
            self.expires = self.expires if date is None else date
        elif name == 'max-age':
            self.max_age = int(value) if SECONDS.fullmatch(value) else self.max_age
        elif name == 'domain':
            self.domain = value.removeprefix('.').lower()
        elif name == 'path':
            self.path = value
        elif name == 'secure':
            self.is_secure = True
        elif name == 'httponly':
            self.is_http_only = True
        elif name == 'samesite':
            self.same_site = SAME_SITE.get(value.lower())

    def path_at(self, place: Place) -> str:
        return self.path if self.path and self.path.startswith('/') else place.default_path()

    def keeps_promise(self, domain: str, path: str) -> bool:
        """Whether the attributes are those that the prefix of the name promises.

        The prefixes are those of RFC 6265bis 4.1.3.
        """
        # A nameless cookie is sent as its value alone, which a server cannot tell from a name.
        name = (self.name or self.value).lower()
        if not name.startswith(('__secure-', '__host-', '__http-')):
            return True
        if not self.name or not self.is_secure:
            return False
        if name.startswith(('__http-', '__host-http-')) and not self.is_http_only:
            return False
        return not name.startswith('__host-') or (
            path == '/' and self.path is not None and not domain.startswith('.'))

    def as_cookie(self, domain: str, path: str, expires: int | None) -> Cookie:
        has_subdomains = domain.startswith('.')
        rest = {'HTTPOnly': ''} if self.is_http_only else {}
        if self.same_site is not None:
            rest['SameSite'] = self.same_site
        return Cookie(
            0, self.name, self.value, None, False, domain, has_subdomains, has_subdomains, path,
            self.path is not None, self.is_secure, expires, expires is None, None, None, rest)

    def expiry(self, now: int) -> int | None:
        """When the cookie expires, in seconds since 1970, or None for the end of the session.

        Max-Age takes precedence over Expires.
        """
        expires = self.expires if self.max_age is None else now + self.max_age
        return None if expires is None else min(expires, now + MAX_AGE)


def parse_set_cookie(text: str) -> SetCookie | None:
    """What a `set-cookie` field says, or None if it must be ignored."""
    if CONTROL.search(text):
        return None
    pair, *attributes = text.split(';')
    # Without an equals sign, all of it is the value, and the name is empty.
    name, value = split_pair(pair) if '=' in pair else ('', pair.strip(' \t'))
    if not 0 < len(name) + len(value) <= MAX_PAIR:
        return None
    set_cookie = SetCookie(name, value)
    for attribute in attributes:
        name, value = split_pair(attribute)
        if len(value) <= MAX_ATTRIBUTE:
            set_cookie.set_attribute(name.lower(), value)
    return set_cookie


def split_pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition('=')
    return name.strip(' \t'), value.strip(' \t')


def parse_date(text: str) -> int | None:
    """A date in seconds since 1970, or None if it is none (RFC 6265 5.1.1).

    It is read as UTC, whatever zone it names.
    """
    found: dict[re.Pattern[str], tuple[str, ...]] = {}
    for token in DATE_TOKEN.findall(text):
        for pattern in DATE_PARTS:
            match = None if pattern in found else pattern.match(token)
            if match is not None:
                found[pattern] = match.groups()
                break
    if len(found) < len(DATE_PARTS):
        return None
    hour, minute, second, day, month, digits = (
        part for pattern in DATE_PARTS for part in found[pattern])
    year = int(digits)
    if year < 100:
        year += 1900 if year >= 70 else 2000
    try:
        date = datetime(year, MONTHS.index(month.lower()) + 1, int(day), int(hour), int(minute),
                        int(second), tzinfo=UTC)
    except ValueError:  # There is no such day, or no such time of day.
        return None
    return int(date.timestamp()) if year >= 1601 else None


# ----------------------------------------------------------------------------------- the jar
#
# However many cookies there are, a request and its response look only at those of their own
# domains. `http.cookiejar` has no public way to do that, and iterating over 3,000 cookies takes
# milliseconds. An index of our own would not notice when others load or clear the jar. So we read
# the index that the jar itself works with, which is private, and change the jar by its public
# methods only.

def created(cookie: Cookie) -> int:
    """The number of a cookie in the order of creation.

    It is 0 for cookies that others have put into the jar, so these come first.
    """
    number: int = getattr(cookie, 'created', 0)
    return number


def number_of(paths: Paths) -> int:
    return sum(map(len, paths.values()))


def is_expired(cookie: Cookie, now: float) -> bool:
    """Whether the cookie has expired.

    In the files of curl and of browsers, an expiry of 0 stands for the end of the session.
    """
    return (cookie.expires or inf) <= now


def pair_of(cookie: Cookie) -> str:
    """The cookie as it is sent (RFC 6265bis 5.8.3).

    If `http.cookiejar` loads a cookie without a name from a file, it takes the value for the name,
    and leaves the value None.
    """
    if cookie.value is None:
        return cookie.name
    return f'{cookie.name}={cookie.value}' if cookie.name else cookie.value


@cache
def public_suffixes() -> PublicSuffixList:
    return PublicSuffixList()


class Store:
    """Reads and changes a jar by the rules of RFC 6265 5.3 and 5.4."""

    __slots__ = ('jar', 'suffixes', 'used', 'number')

    def __init__(self, jar: CookieJar) -> None:
        self.jar = jar
        # Loaded here, and not by the first request, because it reads a file.
        self.suffixes = public_suffixes()
        # How many cookies each domain had when it was last in use. The domain that was used last
        # is the last one. Domains that only others put into the jar from now on are not here.
        self.used = {domain: number_of(paths) for domain, paths in self.domains.items()}
        # The sum of these numbers.
        self.number = sum(self.used.values())

    def __repr__(self) -> str:
        return f'<Store {self.number} cookies of {len(self.used)} domains>'

    @property
    def domains(self) -> dict[str, Paths]:
        return self.jar._cookies  # type: ignore[attr-defined,no-any-return]

    def names(self, domain: str, path: str) -> dict[str, Cookie]:
        return self.domains.get(domain, {}).get(path, {})

    # ------------------------------------------------------------------------- what is sent

    def cookie_field(self, place: Place) -> Fields:
        """The `cookie` field for a request, or nothing if it has no cookies (RFC 6265 5.4)."""
        cookies = self.cookies_for(place, time.time())
        if not cookies:
            return ()
        if len(cookies) > 1:
            cookies.sort(key=lambda cookie: (-len(cookie.path), created(cookie)))
        text = '; '.join(map(pair_of, cookies))
        # Nearly all cookies are printable, and then it is enough to look at all of them at once.
        if not (text.isascii() and text.isprintable() and text.count(';') < len(cookies)):
            text = '; '.join(filter(PAIR.fullmatch, map(pair_of, cookies)))
        return ((b'cookie', text.encode('latin-1')),) if text else ()

    def cookies_for(self, place: Place, now: float) -> list[Cookie]:
        """The cookies for a request. Those that have expired are removed."""
        cookies: list[Cookie] = []
        domains = self.domains
        for domain in place.domains:
            paths = domains.get(domain)
            if paths is None:
                continue
            if domain in self.used:
                self.use(domain, paths)
            for path in matching(place, paths):
                for cookie in list(paths[path].values()):
                    if is_expired(cookie, now):
                        self.forget(domain, path, cookie.name)
                    elif place.is_secure or not cookie.secure:
                        cookies.append(cookie)
        return cookies

    def live_at(self, domain: str, path: str, now: float) -> dict[str, Cookie]:
        """The cookies of a domain and path by name. Those that have expired are removed."""
        names = dict(self.names(domain, path))
        for name in [name for name, cookie in names.items() if is_expired(cookie, now)]:
            del names[name]
            self.forget(domain, path, name)
        return names

    # ------------------------------------------------------------------------- what is kept

    def keep(self, place: Place, values: Iterable[bytes]) -> None:
        """Keep what a response sets, but for what must be ignored (RFC 6265 5.3)."""
        request = place.as_request()
        overlapping = cache(self.overlapping)
        grown = []
        for value in values:
            set_cookie = parse_set_cookie(value.decode('latin-1'))
            if set_cookie is None:
                continue
            domain = self.domain_of(place.host, set_cookie.domain)
            path = set_cookie.path_at(place)
            if domain is None or not set_cookie.keeps_promise(domain, path):
                continue
            if not place.is_secure and (set_cookie.is_secure or self.is_secure_at(
                    overlapping(domain), path, set_cookie.name)):
                continue
            if self.put(set_cookie, domain, path, request):
                grown.append(domain)
        self.make_room(grown)

    def domain_of(self, host: str, attribute: str) -> str | None:
        """The domain of a cookie in the jar, for this `Domain` attribute.

        It is the host itself, or the attribute with a dot before it. It is None if the host may
        not set cookies for that domain.
        """
        if not attribute or attribute in (host, f'[{host}]') and (
                is_address(host) or self.suffixes.is_public(host)):
            return host
        if is_address(host) or not f'.{host}'.endswith(f'.{attribute}') or (
                self.suffixes.is_public(attribute)):
            return None
        return f'.{attribute}'

    def overlapping(self, domain: str) -> list[str]:
        """The domains of the jar whose cookies may go to the same host as those of this one."""
        if not domain.startswith('.'):
            return list(domains_of(domain))
        # This is the only place that looks at all domains. It takes some 0.1 ms for 3,000.
        below = filter(methodcaller('endswith', domain), list(self.domains))
        return [*domains_of(domain[1:]), *below]

    def is_secure_at(self, domains: Iterable[str], path: str, name: str) -> bool:
        """Whether there is a `Secure` cookie of that name that a new one would stand in for.

        What comes without TLS must not do that (RFC 6265bis 5.7).
        """
        now = time.time()
        return any(
            name in names and names[name].secure and path_matches(path, other)
            and not is_expired(names[name], now)
            for domain in domains for other, names in self.domains.get(domain, {}).items())

    def put(self, set_cookie: SetCookie, domain: str, path: str, request: Request) -> bool:
        """Put a cookie into the jar, or remove it if it comes expired.

        Returns whether the jar has one more cookie now.
        """
        now = time.time()
        name = set_cookie.name
        names = self.live_at(domain, path, now)
        if not name:
            # A nameless cookie that was loaded from a file has its value as its name.
            for other in [other for other, cookie in names.items() if cookie.value is None]:
                self.forget(domain, path, other)
        old = names.get(name)
        expires = set_cookie.expiry(int(now))
        if expires is not None and expires <= now:
            if old is not None:
                self.forget(domain, path, name)
            return False
        cookie = set_cookie.as_cookie(domain, path, expires)
        vars(cookie)['created'] = next(CREATED) if old is None else created(old)
        self.jar.set_cookie_if_ok(cookie, request)
        return old is None and self.names(domain, path).get(name) is cookie

    # ---------------------------------------------------------------------------- what goes

    def make_room(self, grown: list[str]) -> None:
        """Remove surplus cookies. `grown` has the domain of each cookie that was added."""
        for domain in dict.fromkeys(grown):
            if domain in self.domains:
                self.thin_out(domain)
                self.use(domain, self.domains[domain])
        while self.number > MAX_COOKIES:
            unused = next(iter(self.used))
            self.number -= self.used.pop(unused)
            if unused in self.domains:
                self.jar.clear(unused)

    def use(self, domain: str, paths: Paths) -> None:
        """Note that the domain is in use, and how many cookies it has now."""
        number = number_of(paths)
        self.number += number - self.used.pop(domain, 0)
        self.used[domain] = number

    def thin_out(self, domain: str) -> None:
        """Remove the cookies that a domain has too many of.

        What has expired goes first, then the oldest cookies, those without `Secure` before the
        others: what came without TLS must not push out what came with it (RFC 6265bis 5.7).
        """
        paths = self.domains[domain]
        if number_of(paths) <= MAX_PER_DOMAIN:
            return
        now = time.time()
        entries = [(cookie.secure, created(cookie), path, name) for path in list(paths)
                   for name, cookie in self.live_at(domain, path, now).items()]
        entries.sort()
        for _, _, path, name in entries[:-MAX_PER_DOMAIN]:
            self.forget(domain, path, name)

    def forget(self, domain: str, path: str, name: str) -> None:
        """Remove a cookie, and the empty path and domain that the jar would keep."""
        self.jar.clear(domain, path, name)
        if not self.domains[domain][path]:
            self.jar.clear(domain, path)
            if not self.domains[domain]:
                self.jar.clear(domain)
                self.number -= self.used.pop(domain, 0)
