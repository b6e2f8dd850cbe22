"""Cookies for lowhaio: kept in a jar of `http.cookiejar`, in the scope of RFC 6265.

::

    request, close = Pool()
    jar = http.cookiejar.CookieJar()
    request_with_cookies = with_cookies(request, jar)
    code, headers, body = await request_with_cookies(b'GET', 'https://example.com/')
"""

from __future__ import annotations

import re
import time
from calendar import timegm
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from email.utils import parsedate_tz
from functools import cache
from http.cookiejar import Cookie, CookieJar
from typing import Any, TypeVar, cast
from urllib.parse import quote
from urllib.request import Request

from publicsuffixlist import PublicSuffixList

from lowhaio import HttpConnectionError, empty_async_iterator

# RFC 6265 6.1 asks for no less than 4096, 50 and 3000. The rest are those of its successor,
# RFC 6265bis 5.6 and 5.5.
MAX_PAIR = 4096
MAX_PER_DOMAIN = 180
MAX_COOKIES = 3000
MAX_ATTRIBUTE = 1024
MAX_AGE = 400 * 24 * 60 * 60

URL = re.compile(r'(https?)://(\[[^\[\]/?#@]*\]|[^:\[\]/?#@]+)(?::[0-9]*)?(?![^/?#])([^?#]*)',
                 re.IGNORECASE)
# What a name and a value may hold. A control character may be somebody's attack.
PAIR = re.compile(r'[\x20-\x3a\x3c-\x7e\x80-\xff]*')
SECONDS = re.compile('-?[0-9]+')

Fields = tuple[tuple[bytes, bytes], ...]
Response = tuple[bytes, Fields, Any]
# A layer returns the type that it is given: the same arguments, the same body.
AnyRequest = TypeVar('AnyRequest', bound=Callable[..., Awaitable[Response]])


def with_cookies(request: AnyRequest, jar: CookieJar) -> AnyRequest:
    """A `request` that sends the cookies of the jar, and keeps those of the responses in it.

    Its policy is asked for each cookie that is to be kept. Headers that have a `cookie` are sent
    as they are.
    """
    if not callable(request):
        raise TypeError(f'request must be a coroutine function, got {type(request).__name__}')
    if not isinstance(jar, CookieJar):
        raise TypeError(f'jar must be an http.cookiejar.CookieJar, got {type(jar).__name__}')
    # Now, since it reads a file, and takes its time, the first time.
    suffixes = public_suffixes()

    async def request_with_cookies(
            method: bytes, url: str, params: Any = (),
            headers: Iterable[tuple[bytes, bytes]] = (), body: Any = empty_async_iterator,
            body_args: Any = (), body_kwargs: Any = (), **kwargs: Any) -> Response:
        try:
            place = Place(url)
            sent = tuple(headers)
            if all(name.lower() != b'cookie' for name, _ in sent):
                sent += cookie_field(jar, place)
        except (TypeError, ValueError, AttributeError) as cause:
            raise HttpConnectionError('url must be a str that starts with http:// or https:// and '
                                      'a host, headers pairs of name and value, both bytes'
                                      ) from cause
        code, fields, response_body = await request(
            method, url, params=params, headers=sent, body=body, body_args=body_args,
            body_kwargs=body_kwargs, **kwargs)
        set_cookies = [value for name, value in fields if name == b'set-cookie']
        for value in set_cookies[-MAX_PER_DOMAIN:]:
            keep(jar, suffixes, place, value.decode('latin-1'))
        if set_cookies:
            make_room(jar)
        return code, fields, response_body

    return cast(AnyRequest, request_with_cookies)


class Place:
    """What of a URL decides which cookies are for it."""

    __slots__ = ('is_secure', 'host', 'path')

    def __init__(self, url: str) -> None:
        match = URL.match(url)
        if match is None:
            raise ValueError('no http:// or https://, or no host')
        scheme, host, path = match.groups()
        self.is_secure = scheme.lower() == 'https'
        self.host = host.encode('ascii' if host.isascii() else 'idna').decode().lower()
        self.host = self.host.removesuffix('.')
        # As it is sent.
        self.path = quote(path, "/%!$&'()*+,;=:@") or '/'

    def default_path(self) -> str:
        """RFC 6265 5.1.4."""
        return self.path.rpartition('/')[0] or '/'


def domain_matches(host: str, domain: str) -> bool:
    """RFC 6265 5.1.3. A domain that begins with a dot is that of its subdomains, too."""
    is_address = host.startswith('[') or host.rpartition('.')[2].isdigit()
    return host == domain or (
        domain.startswith('.') and ('.' + host).endswith(domain) and not is_address)


def path_matches(path: str, cookie_path: str) -> bool:
    """RFC 6265 5.1.4."""
    return path.startswith(cookie_path) and (
        cookie_path.endswith('/') or path[len(cookie_path):len(cookie_path) + 1] in ('', '/'))


# ------------------------------------------------------------------------- what is sent

def cookie_field(jar: CookieJar, place: Place) -> Fields:
    """RFC 6265 5.4."""
    now = int(time.time())
    cookies = [cookie for cookie in jar
               if domain_matches(place.host, cookie.domain)
               and path_matches(place.path, cookie.path)
               and (place.is_secure or not cookie.secure) and not cookie.is_expired(now)]
    # Of equal length, the one that is there for longer is the first.
    cookies.sort(key=lambda cookie: -len(cookie.path))
    # What was loaded from a file may hold anything.
    pairs = [pair for pair in map(pair_of, cookies) if PAIR.fullmatch(pair)]
    return ((b'cookie', '; '.join(pairs).encode('latin-1')),) if pairs else ()


def pair_of(cookie: Cookie) -> str:
    return cookie.name if cookie.value is None else f'{cookie.name}={cookie.value}'


# ------------------------------------------------------------------------- what is kept

@cache
def public_suffixes() -> PublicSuffixList:
    return PublicSuffixList()


def keep(jar: CookieJar, suffixes: PublicSuffixList, place: Place, set_cookie: str) -> None:
    """RFC 6265 5.2 and 5.3, and the refusals of 6265bis."""
    pair, *rest = (part.strip(' \t') for part in set_cookie.split(';'))
    name, equals, value = (part.strip(' \t') for part in pair.partition('='))
    if not name or not equals or not PAIR.fullmatch(pair) or len(name) + len(value) > MAX_PAIR:
        return
    attributes = {}
    for attribute in rest:
        key, _, text = (part.strip(' \t') for part in attribute.partition('='))
        if len(text) <= MAX_ATTRIBUTE and PAIR.fullmatch(text):
            attributes[key.lower()] = text
    domain = domain_of(suffixes, place.host, attributes.get('domain', ''))
    path = attributes.get('path', '')
    if not path.startswith('/'):
        path = place.default_path()
    is_secure = 'secure' in attributes
    if domain is None or not is_promise_kept(name, domain, attributes):
        return
    if not place.is_secure and (is_secure or hides(jar, name, domain, path)):
        return
    now = int(time.time())
    expires = expiry_of(attributes, now)
    cookie = Cookie(
        0, name, value, None, False, domain, domain.startswith('.'), domain.startswith('.'), path,
        'path' in attributes, is_secure, expires, expires is None, None, None,
        {'HTTPOnly': ''} if 'httponly' in attributes else {})
    if cookie.is_expired(now):
        forget(jar, [old for old in jar
                     if (old.domain, old.path, old.name) == (domain, path, name)])
    else:
        scheme = 'https' if place.is_secure else 'http'
        jar.set_cookie_if_ok(cookie, Request(f'{scheme}://{place.host}{place.path}'))


def domain_of(suffixes: PublicSuffixList, host: str, attribute: str) -> str | None:
    """The host, the domain with a dot before it, or None if it is not the host's to set."""
    domain = attribute.lower().removeprefix('.')
    if not domain:
        return host
    if not domain_matches(host, '.' + domain) or suffixes.is_public(domain):
        return host if domain == host else None
    return '.' + domain


def is_promise_kept(name: str, domain: str, attributes: dict[str, str]) -> bool:
    """RFC 6265bis 4.1.3: with these prefixes, a name promises what its attributes are."""
    is_host = name.lower().startswith('__host-')
    if is_host and (attributes.get('path') != '/' or domain.startswith('.')):
        return False
    return 'secure' in attributes or not (is_host or name.lower().startswith('__secure-'))


def hides(jar: CookieJar, name: str, domain: str, path: str) -> bool:
    """RFC 6265bis 5.7: what came without TLS must not stand in for what came with it."""
    return any(
        cookie.secure and cookie.name == name and path_matches(path, cookie.path)
        and (domain_matches(domain.removeprefix('.'), cookie.domain)
             or domain_matches(cookie.domain.removeprefix('.'), domain)) for cookie in jar)


def expiry_of(attributes: dict[str, str], now: int) -> int | None:
    """In seconds, or None for the end of the session. Max-Age is the stronger one."""
    expires = None
    if SECONDS.fullmatch(attributes.get('max-age', '')):
        expires = now + int(attributes['max-age'])
    elif date := parsedate_tz(attributes.get('expires', '')):
        # RFC 6265 5.1.1: it is in UTC, whatever it says. What is no date is ignored.
        with suppress(ValueError, OverflowError):
            expires = timegm(date[:9])
    return None if expires is None else min(expires, now + MAX_AGE)


def make_room(jar: CookieJar) -> None:
    """Forget the expired ones, and the first of each domain, and of the largest, if too many."""
    now = int(time.time())
    forget(jar, [cookie for cookie in jar if cookie.is_expired(now)])
    by_domain: dict[str, list[Cookie]] = {}
    for cookie in jar:
        by_domain.setdefault(cookie.domain, []).append(cookie)
    excess = [cookie for cookies in by_domain.values() for cookie in cookies[:-MAX_PER_DOMAIN]]
    left = [cookies[-MAX_PER_DOMAIN:] for cookies in by_domain.values()]
    for _ in range(sum(map(len, left)) - MAX_COOKIES):
        excess.append(max(left, key=len).pop(0))
    forget(jar, excess)


def forget(jar: CookieJar, cookies: list[Cookie]) -> None:
    """And what the jar would keep of their paths and domains."""
    for cookie in cookies:
        jar.clear(cookie.domain, cookie.path, cookie.name)
    paths = {(cookie.domain, cookie.path) for cookie in jar}
    domains = {domain for domain, _ in paths}
    for domain, path in {(cookie.domain, cookie.path) for cookie in cookies} - paths:
        jar.clear(domain, path)
    for domain in {cookie.domain for cookie in cookies} - domains:
        jar.clear(domain)
