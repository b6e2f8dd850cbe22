"""Requests through proxies of HTTP and SOCKS5: a `request` like that of lowhaio's `Pool`.

::

    request, close = proxied_pool('http://proxy.example:3128')
    code, headers, body = await request(b'GET', 'https://example.com/')

Each request goes one of three ways, and each way has a pool of lowhaio's:

    direct      no proxy is for its origin
    forwarded   http by an HTTP proxy. The request goes to the proxy itself, and its target is the
                whole URL (RFC 9112 3.2.2). To the pool, the proxy is a server like any other
    tunnelled   https by an HTTP proxy, which is asked for a tunnel by CONNECT (RFC 9110 9.3.6),
                and everything by a SOCKS5 proxy (RFC 1928). `Tunnels` is the `get_connection` of
                that pool. The TLS of https is made by the pool, through the tunnel

A proxy may itself be reached by TLS. A forwarded request has that from its pool. Below a tunnel it
would be TLS in TLS, which an `ssl.SSLSocket` can not do, so a `Relay` is between the two.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import select
import socket
import ssl
from base64 import b64encode
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from functools import cache, lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, NamedTuple, cast
from urllib.parse import quote, unquote_to_bytes

from lowhaio import (
    Address,
    BodyEnded,
    Close,
    ConnectionClosed,
    Dialer,
    Event,
    Fields,
    HttpConnectionError,
    HttpDataError,
    HttpError,
    Phase,
    Pool,
    Request,
    RequestFailed,
    canonical_host,
    empty_async_iterator,
    encode_params,
    get_ssl_context_default,
    repeatable,
)
from lowhaio_auth import Challenge, best_challenge

__all__ = ['Choose', 'Proxies', 'Proxy', 'ProxyError', 'from_environment', 'proxied_pool']

# Bytes of the head of an answer to CONNECT, which is as much as lowhaio allows by default.
MAX_HEAD = 16 * 1024

# Interim responses before that answer.
MAX_INTERIM_RESPONSES = 10

# Bytes of what a proxy says to a refusal that are looked at, how many characters of it are shown,
# and how many seconds it may take. The error has been decided on by then.
MAX_PAGE = 4 * 1024
MAX_SHOWN = 120
PAGE_TIMEOUT = 1

# How many challenges of a proxy one request answers. All but the first must say that the nonce was
# stale: proxies say so when they remember few nonces, and many requests log in at once.
MAX_CHALLENGES = 5

# How many bytes of the body of a 407 are read so that its connection can be used again, and for
# how many seconds. Each chunk counts as 1 KiB more than it holds.
MAX_DRAINED = 64 * 1024
DRAIN_TIMEOUT = 1

# How many proxies have pools at the same time. Some programs take a new user name for each
# request, and so a new proxy.
MAX_PROXIES = 100

# Bytes that a relay takes at once. It holds so many in each direction, at most.
RELAYED = 64 * 1024
# How often it moves bytes before the others have a turn of the loop.
MAX_MOVES = 8
# Seconds between two looks whether our end has been closed, while a proxy takes nothing.
HANGUP_PAUSE = 1

# The statuses that would come again: the credentials, or the rules of the proxy.
LASTING = (b'401', b'403', b'407')

GetSslContext = Callable[[], ssl.SSLContext]
Connect = Callable[[str, int], Coroutine[Any, Any, socket.socket]]
LookUp = Callable[[str], Coroutine[Any, Any, tuple[Address, ...]]]
Loop = asyncio.AbstractEventLoop
Response = tuple[bytes, Fields, Any]


class ProxyError(Exception):
    """A proxy could not be reached, or has refused. It is the `__cause__` of an `HttpError`.

    Its text tells which proxy that was, without credentials, what it was asked for, and what it
    said.
    """

    code = b''
    """The status of its response, such as `b'407'`. Empty if there was none."""

    headers: Fields = ()
    """The fields of that response, as pairs of lower-case name and value."""

    is_lasting = False
    """The same request would be refused again, so lowhaio-retry does not make it."""


# ------------------------------------------------------------------------------------ proxies

DEFAULT_PORTS = {'http': 80, 'https': 443, 'socks5': 1080, 'socks5h': 1080}
PROXY = re.compile(r'(?:([A-Za-z][A-Za-z0-9+.\-]*)://)?(?:([^/?#]*)@)?'
                   r'(\[[^\[\]/?#@]*\]|[^\[\]:/?#@]+)(?::([0-9]{0,5}))?/?')
EXPECTED = "a proxy must be like 'http://user:password@proxy.example:3128'"


class Proxy:
    """A proxy, and what it is to be told.

    - `url`: `http://`, `https://`, `socks5://` or `socks5h://`, perhaps a user and a password,
      percent-encoded, a host, and perhaps a port. Without a scheme it is `http`. By `socks5` this
      machine looks up the names of servers, and by `socks5h` the proxy does.
    - `auth`: user and password, in place of those of the URL.
    - `headers`: pairs of name and value, bytes, that are sent to an HTTP proxy only.

    Raises a ValueError or TypeError, which does not show the URL.
    """

    __slots__ = ('scheme', 'host', 'port', 'name', 'auth', 'headers', '__weakref__')

    def __init__(self, url: str, *, auth: tuple[str, str] | None = None,
                 headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        match = PROXY.fullmatch(url) if isinstance(url, str) else None
        if match is None:  # It may have a password, so it is not shown.
            raise ValueError(f'{EXPECTED}, got another {type(url).__name__}')
        scheme, userinfo, host, port = match.groups()
        self.scheme: str = (scheme or 'http').lower()
        if self.scheme not in DEFAULT_PORTS:
            raise ValueError(f'a proxy must be of {", ".join(DEFAULT_PORTS)}, got {scheme}')
        self.host: str
        try:
            self.host = canonical_host(host)
        except ValueError as cause:
            raise ValueError(f'{EXPECTED}, got the host {host[:60]!r}') from cause
        self.port: int = int(port or DEFAULT_PORTS[self.scheme])
        if not 1 <= self.port <= 65535:
            raise ValueError(f'a proxy must have a port from 1 to 65535, got {port}')
        self.name: str = f'{self.scheme}://{authority(self.host, self.port)}'
        self.auth: tuple[bytes, bytes] | None = checked_auth(
            self.scheme, userinfo if auth is None else auth)
        self.headers: Fields = checked_headers(headers)

    def __repr__(self) -> str:
        return f'<Proxy {self.name}{" with credentials" if self.auth else ""}>'

    @property
    def is_http(self) -> bool:
        return self.scheme.startswith('http')


def authority(host: str, port: int) -> str:
    return f'[{host}]:{port}' if ':' in host else f'{host}:{port}'


def checked_auth(scheme: str, given: str | tuple[str, str] | None) -> tuple[bytes, bytes] | None:
    if given is None:
        return None
    if isinstance(given, str):
        user, _, password = map(unquote_to_bytes, given.partition(':'))
    else:
        try:
            user, password = (part.encode() for part in given)
        except (AttributeError, TypeError, ValueError):
            raise TypeError('auth must be a pair of str, user and password') from None
    if re.search(rb'[\x00-\x1f\x7f]', user + password):
        raise ValueError('the user and the password of a proxy must not have control characters')
    if scheme.startswith('http') and b':' in user:
        raise ValueError('the user of an HTTP proxy must not have a colon')
    if scheme.startswith('socks') and not (0 < len(user) < 256 and 0 < len(password) < 256):
        raise ValueError('the user and the password of a SOCKS5 proxy must have 1 to 255 bytes')
    return user, password


def checked_headers(headers: Iterable[tuple[bytes, bytes]]) -> Fields:
    """RFC 9110 5.1, 5.5."""
    try:
        fields = tuple((name, value) for name, value in headers)
        is_good = all(re.fullmatch(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", name)
                      and not re.search(rb'[\x00-\x08\x0a-\x1f\x7f]', value)
                      for name, value in fields)
    except (TypeError, ValueError):
        raise TypeError('headers must be pairs of name and value, both bytes') from None
    if not is_good:
        raise ValueError('headers must have tokens as names, and no control characters in values')
    return fields


# ------------------------------------------------------------------- which proxy is for a host
#
# `proxies` may be one proxy, a mapping as the environment has it, or a function. All of them
# become a function `choose(scheme, host, port)`.

Choose = Callable[[str, str, int], str | Proxy | None]
"""`choose(scheme, host, port)` returns the proxy for an origin, or None for no proxy."""

Proxies = str | Proxy | Mapping[str, str | Proxy] | Choose | None
"""One proxy for all, or a mapping of `'http'`, `'https'` and `'all'` to proxies and of `'no'` to
the hosts without one, as `from_environment` returns it, or a function."""


def from_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str | Proxy]:
    """Return the proxies of the environment, read as curl reads them.

    These are `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy`. If one is missing or empty,
    then the same in upper case, but never `HTTP_PROXY`: where CGI starts a program, whoever makes
    a request to it sets that one, by a field `proxy`.

    The keys are `'http'`, `'https'`, `'all'` and `'no'`. Raises ValueError for a variable that is
    no proxy.
    """
    proxies: dict[str, str | Proxy] = {}
    for key in ('http', 'https', 'all', 'no'):
        value = environ.get(f'{key}_proxy', '')
        if not value and key != 'http':
            value = environ.get(f'{key}_proxy'.upper(), '')
        if value:
            try:
                proxies[key] = value if key == 'no' else Proxy(value)
            except ValueError as cause:
                raise ValueError(f'the environment variable {key}_proxy: {cause}') from None
    return proxies


def chooser_of(proxies: Proxies) -> Choose:
    if isinstance(proxies, Mapping):
        return chooser_by(dict(proxies))
    if callable(proxies):
        return proxies
    only = as_proxy(proxies)
    return lambda scheme, host, port: only


def chooser_by(proxies: dict[str, Any]) -> Choose:
    if not proxies.keys() <= {'http', 'https', 'all', 'no'}:
        raise ValueError('proxies must have http, https, all and no as keys, got '
                         f'{", ".join(map(repr, proxies))}')
    no_proxy = proxies.pop('no', None) or ''
    if not isinstance(no_proxy, str):
        raise TypeError(f"proxies['no'] must be a str, got {type(no_proxy).__name__}")
    of_scheme = {key: as_proxy(value) for key, value in proxies.items()}
    is_direct = lru_cache(1024)(lambda host: is_without_proxy(host, no_proxy))

    def choose(scheme: str, host: str, port: int) -> Proxy | None:
        proxy = of_scheme.get(scheme, of_scheme.get('all'))
        return None if proxy is None or is_direct(host) else proxy

    return choose


def as_proxy(choice: object) -> Proxy | None:
    if choice is None or isinstance(choice, Proxy):
        return choice
    if not isinstance(choice, str):
        raise TypeError(f'a proxy must be a str, a Proxy or None, got {type(choice).__name__}')
    return Proxy(choice)


def is_without_proxy(host: str, no_proxy: str) -> bool:
    """Whether a host in its canonical form is in the list of `no_proxy`, as curl reads it.

    The list is separated by commas. It ends after a blank that no comma follows. It has names,
    which stand for all names below them, too, and addresses, perhaps with a number of bits. It has
    no ports. An asterisk stands for all hosts if it is alone.
    """
    if no_proxy == '*':
        return True
    address = parse_address(host.partition('%')[0])
    for entry in entries_of(no_proxy):
        if matches_name(host, entry) if address is None else matches_address(address, entry):
            return True
    return False


def entries_of(no_proxy: str) -> Iterator[str]:
    for part in no_proxy.split(','):
        words = part.split()
        yield from words[:1]
        if len(words) > 1:
            return


def matches_name(host: str, entry: str) -> bool:
    name = entry.removesuffix('.').removeprefix('.').lower()
    return bool(name) and f'.{host}'.endswith(f'.{name}')


def matches_address(address: IPv4Address | IPv6Address, entry: str) -> bool:
    text, _, bits = entry.partition('/')
    length = int(re.match('[0-9]{0,3}', bits)[0] or 0)  # type: ignore[index]  # it always matches
    network = parse_address(text)
    if network is None or network.version != address.version or length > address.max_prefixlen:
        return False
    # To curl, no bits are all of them.
    return address in ip_network((network, length or address.max_prefixlen), strict=False)


def parse_address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


# ---------------------------------------------------------------------------------- the pools

def proxied_pool(proxies: Proxies, *,
                 get_proxy_ssl_context: GetSslContext = get_ssl_context_default,
                 **options: Any) -> tuple[Request, Close]:
    """Return `request` and `close`, as `Pool` does, of pools whose requests go through proxies.

    - `proxies`: a URL or a `Proxy` for all requests. Or a mapping of `'http'`, `'https'` and
      `'all'` to these, and of `'no'` to the hosts without a proxy, as `from_environment` returns
      it. Or `choose(scheme, host, port)`, which returns a URL, a `Proxy`, or None for no proxy.
      The host is in its canonical form, an IPv6 address without brackets.
    - `get_proxy_ssl_context()` returns the SSL context for proxies that are reached by TLS.
    - `options`: those of `Pool`, except `get_connection`. Each proxy has a pool for the requests
      that it forwards, and one for its tunnels, and there is one for the requests without a proxy.
      Limits are those of each pool.

    Raises a ValueError or TypeError for bad options and proxies.
    """
    if 'get_connection' in options:
        raise TypeError('proxied_pool must not have get_connection: it has one of its own')
    pools = Pools(chooser_of(proxies), get_proxy_ssl_context, options)

    async def request(
            method: bytes, url: str, params: Any = (), headers: Any = (),
            body: Any = empty_async_iterator, body_args: Any = (), body_kwargs: Any = (),
            **kwargs: Any) -> Response:
        origin = origin_of(url)
        if origin is None or pools.is_closed:
            # That pool refuses it, and tells why.
            return await pools.direct(
                method, url, params=params, headers=headers, body=body, body_args=body_args,
                body_kwargs=body_kwargs, **kwargs)
        headers = reiterable(headers)
        asked = {'params': params, 'headers': headers, 'body': body, 'body_args': body_args,
                 'body_kwargs': body_kwargs, **kwargs}
        way = pools.way_to(method, origin)
        if way is None:
            return await pools.direct(method, url, **asked)
        names = names_of(headers)
        if b'proxy-authorization' in names:
            raise refused(method, origin, ValueError(
                'headers must not have proxy-authorization: the Proxy has the credentials'))
        with way:
            await pools.close_surplus()
            # RFC 6455 4.1: a proxy may not pass an upgrade on, so it goes through a tunnel.
            if way.proxy.is_http and origin.scheme == 'http' and b'upgrade' not in names:
                return await forward(way, method, url, origin, names, asked)
            return await way.tunnelled(method, url, **asked)

    request.__doc__ = Request.__call__.__doc__
    return cast(Request, request), cast(Close, pools.close)


class Pools:
    """The pool for requests without a proxy, and the ways through proxies that were used last."""

    __slots__ = ('choose', 'get_proxy_ssl_context', 'options', 'counters', 'connect', 'look_up',
                 'close_dialer', 'direct', 'close_direct', 'ways', 'is_closed')

    def __init__(self, choose: Choose, get_proxy_ssl_context: GetSslContext,
                 options: dict[str, Any]) -> None:
        self.choose = choose
        # The pools share these, because it takes time and memory to read the authorities.
        self.get_proxy_ssl_context = cache(get_proxy_ssl_context)
        self.options = {**options, 'get_ssl_context': cache(
            options.get('get_ssl_context', get_ssl_context_default))}
        self.counters = itertools.count(1), itertools.count(1)
        self.connect, self.look_up, self.close_dialer = Dialer(
            **{name: options[name] for name in DIALER_OPTIONS if name in options})
        self.direct, self.close_direct = self.new_pool()
        # The one that was used last is the last.
        self.ways: OrderedDict[str | Proxy, Way] = OrderedDict()
        self.is_closed = False

    def __repr__(self) -> str:
        return f'<Pools with {len(self.ways)} proxies{", closed" if self.is_closed else ""}>'

    def new_pool(self, **own: Any) -> tuple[Request, Close]:
        options = {**self.options, **own}
        # The pool refuses what is no function.
        if callable(options.get('on_event')):
            options['on_event'] = Renumbered(options['on_event'], self.counters)
        return Pool(**options)

    def way_to(self, method: bytes, origin: Origin) -> Way | None:
        """The way to the origin, or None if there is no proxy for it."""
        try:
            choice = self.choose(origin.scheme, origin.host, origin.port)
        except Exception as cause:
            # Its text may hold a secret.
            raise refused(method, origin, cause, 'choosing a proxy failed: '
                          f'{type(cause).__name__}') from cause
        if choice is None:
            return None
        try:
            way = self.ways.get(choice) if isinstance(choice, (str, Proxy)) else None
            way = way or Way(self, cast(Proxy, as_proxy(choice)))
        except (TypeError, ValueError) as cause:
            raise refused(method, origin, cause) from cause
        self.ways[choice] = way
        self.ways.move_to_end(choice)
        return way

    async def close_surplus(self) -> None:
        """Close the ways that were used longest ago, if there are too many. Responses that are
        still being read keep their connections until they end."""
        surplus = len(self.ways) - MAX_PROXIES
        unused = (choice for choice, way in self.ways.items() if not way.requests)
        for choice in list(itertools.islice(unused, max(surplus, 0))):
            await self.ways.pop(choice).close()

    async def close(self, **kwargs: Any) -> None:
        self.is_closed = True
        try:
            await self.close_direct(**kwargs)
        finally:
            while self.ways:
                _, way = self.ways.popitem()
                await way.close(**kwargs)
        await self.close_dialer()


DIALER_OPTIONS = ('get_dns_resolver', 'get_sock', 'min_ttl', 'max_stale', 'max_lookups',
                  'get_resolver_logger_adapter')


class Way:
    """The pools of one proxy, and what its requests share."""

    __slots__ = ('proxy', 'login', 'forwarded', 'close_forwarded', 'tunnelled', 'close_tunnelled',
                 'requests')

    def __init__(self, pools: Pools, proxy: Proxy) -> None:
        self.proxy = proxy
        self.login = None if proxy.auth is None else Login(*proxy.auth)
        self.forwarded, self.close_forwarded = pools.new_pool(
            get_ssl_context=pools.get_proxy_ssl_context)
        self.tunnelled, self.close_tunnelled = pools.new_pool(
            get_connection=Tunnels(proxy, self.login, pools))
        # How many have no response yet.
        self.requests = 0

    def __repr__(self) -> str:
        return f'<Way through {self.proxy!r}, {self.requests} requests>'

    def __enter__(self) -> None:
        self.requests += 1

    def __exit__(self, *_: object) -> None:
        self.requests -= 1

    async def close(self, **kwargs: Any) -> None:
        try:
            await self.close_forwarded(**kwargs)
        finally:
            await self.close_tunnelled(**kwargs)


class Renumbered:
    """Makes the numbers of one pool's events such that no other pool's are the same."""

    __slots__ = ('on_event', 'kinds')

    def __init__(self, on_event: Callable[[Event], object],
                 counters: tuple[Iterator[int], Iterator[int]]) -> None:
        self.on_event = on_event
        # Of those that go on: the number of the pool, and ours.
        self.kinds: tuple[tuple[str, dict[int, int], Iterator[int], tuple[type, ...]], ...] = (
            ('request', {}, counters[0], (BodyEnded, RequestFailed)),
            ('connection', {}, counters[1], (ConnectionClosed,)))

    def __repr__(self) -> str:
        return f'<Renumbered {", ".join(f"{len(kind[1])} {kind[0]}s" for kind in self.kinds)}>'

    def __call__(self, event: Any) -> None:
        for field, ours, counter, last in self.kinds:
            number = getattr(event, field, None)
            if number is not None:
                if number not in ours:
                    ours[number] = next(counter)
                event = event._replace(**{field: ours[number]})
                if isinstance(event, last):
                    del ours[number]
        self.on_event(event)


# --------------------------------------------------------------------------- forwarded requests

class Origin(NamedTuple):
    scheme: str
    host: str
    port: int
    authority: str
    """As the target and the `host` field have it: the port only if it is not the default."""

    @property
    def name(self) -> str:
        return f'{self.scheme}://{authority(self.host, self.port)}'


URL = re.compile(r'(https?)://([^/?#]*)([^#]*)', re.IGNORECASE)
AUTHORITY = re.compile(r'(\[[^\[\]]*\]|[^:\[\]@]+)(?::([0-9]{0,5}))?')

# What may not stand in a target (RFC 3986 3.3, 3.4). Control characters are not encoded, so that
# lowhaio refuses them.
TO_ENCODE = re.compile(
    r"%(?![0-9A-Fa-f]{2})|[^A-Za-z0-9\-._~!$&'()*+,;=:@/?%\x00-\x1f\x7f-\x9f]")


def origin_of(url: str) -> Origin | None:
    """The origin of a URL, or None if lowhaio would refuse the URL."""
    match = URL.match(url) if isinstance(url, str) else None
    if match is None:
        return None
    try:
        return parse_origin(match[1].lower(), match[2])
    except ValueError:
        return None


@lru_cache(1024)
def parse_origin(scheme: str, text: str) -> Origin:
    """Raises ValueError, also if there is userinfo, so the cache holds no secret."""
    match = AUTHORITY.fullmatch(text)
    if match is None:
        raise ValueError('a host is expected, and perhaps a port')
    host = canonical_host(match[1])
    port = int(match[2] or DEFAULT_PORTS[scheme])
    if not 1 <= port <= 65535:
        raise ValueError('a port is from 1 to 65535')
    sent = authority(without_zone(host), port)
    if port == DEFAULT_PORTS[scheme]:
        sent = sent.removesuffix(f':{port}')
    return Origin(scheme, host, port, sent)


def without_zone(host: str) -> str:
    """RFC 6874 4: the zone of an IPv6 address is only meant for this machine."""
    return host.partition('%')[0]


async def forward(way: Way, method: bytes, url: str, origin: Origin, names: set[bytes],
                  asked: dict[str, Any]) -> Response:
    """The response of a request that is sent to the proxy itself, with the whole URL as target."""
    asked = {**asked, 'body_args': reiterable(asked['body_args']),
             'body_kwargs': reiterable(asked['body_kwargs']),
             # The certificate is that of the proxy.
             'server_hostname': None}
    try:
        target = absolute_target(url, origin, asked)
    except (TypeError, ValueError) as cause:
        raise refused(method, origin, cause) from cause
    asked['target'] = target
    fields = (*fields_of(asked['headers']), *way.proxy.headers)
    if b'host' not in names:
        fields = ((b'host', origin.authority.encode()), *fields)
    if way.login is not None:
        asked['body'] = repeatable(asked['body'])
    turn = Turn(way.login, method, target)
    may_wait = b'expect' not in names and has_content(names, fields)
    while True:
        asked['headers'] = (*fields, *turn.fields(), *turn.expectation(may_wait))
        try:
            with named(origin, way.proxy):
                code, headers, body = await way.forwarded(method, f'{way.proxy.name}/', **asked)
        except HttpConnectionError as error:
            if turn.count:
                raise after_407(error) from error
            raise
        if code != b'407':
            turn.note_accepted()
            return code, headers, ForwardedBody(body, origin, way.proxy)
        if turn.is_challenged(headers):
            await drain(body)
            continue
        refusal = ProxyError(f'the proxy {way.proxy.name}, asked for {origin.name}, answered '
                             f'{status(code, body.reason)}{await said_by(body)}')
        refusal.code, refusal.headers, refusal.is_lasting = code, headers, True
        raise no_credentials(method, origin, refusal) from refusal


def absolute_target(url: str, origin: Origin, asked: dict[str, Any]) -> bytes:
    """RFC 9112 3.2.2. A target that the caller gave stands for the path and the query."""
    start = f'{origin.scheme}://{origin.authority}'
    given = asked.get('target')
    if given is not None:
        if not isinstance(given, bytes):
            raise TypeError(f'target must be bytes, got {type(given).__name__}')
        # RFC 9112 3.2.4: the last proxy sends * for an URL without a path.
        return start.encode() + given.removeprefix(b'*') if given[:1] in (b'/', b'*') else given
    match = URL.match(url)
    assert match is not None  # it has an origin
    path = match[3] if match[3].startswith('/') else f'/{match[3]}'
    path = TO_ENCODE.sub(lambda match: quote(match[0], safe=''), path)
    query = encode_params(asked['params'] or ())
    asked['params'] = ()
    if query:
        separator = '?' if '?' not in path else '' if path.endswith(('?', '&')) else '&'
        path = f'{path}{separator}{query}'
    return f'{start}{path}'.encode()


@contextlib.contextmanager
def named(origin: Origin, proxy: Proxy) -> Iterator[None]:
    """Let errors tell what the request was for, since its pool knows the proxy only."""
    try:
        yield
    except HttpError as error:
        both = f'{origin.name} through {proxy.name}'
        # A body that has failed raises the same error again.
        if both not in str(error):
            error.args = (str(error).replace(proxy.name, both, 1),)
        raise


class ForwardedBody:
    """The body of a response that a proxy has passed on. Its errors tell the origin, too."""

    __slots__ = ('_body', '_origin', '_proxy', '__weakref__')

    def __init__(self, body: Any, origin: Origin, proxy: Proxy) -> None:
        self._body = body
        self._origin = origin
        self._proxy = proxy

    def __repr__(self) -> str:
        return f'<ForwardedBody of {self._body!r}>'

    def __aiter__(self) -> ForwardedBody:
        return self

    async def __anext__(self) -> bytes:
        try:
            chunk: bytes = await anext(self._body)
        except HttpError:
            with named(self._origin, self._proxy):
                raise
        return chunk

    async def aclose(self) -> None:
        await self._body.aclose()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)


async def said_by(body: Any) -> str:
    """What a refusal says, for its error. Its connection is closed, unless all of it is here."""
    page = b''
    try:
        with contextlib.suppress(HttpError, TimeoutError):
            async with asyncio.timeout(PAGE_TIMEOUT):
                async for chunk in body:
                    page += chunk[:MAX_PAGE]
                    if len(page) >= MAX_PAGE:
                        break
    finally:
        await body.aclose()
    return shown_page(page)


def fields_of(headers: Any) -> tuple[Any, ...]:
    """The fields as a tuple. What are none is in it as it is, and so lowhaio refuses that."""
    try:
        return tuple(headers or ())
    except TypeError:
        return headers,


def names_of(headers: Any) -> set[bytes]:
    """The lower-case names of the fields. None of them if lowhaio will refuse the headers."""
    try:
        return {name.lower() for name, _ in headers}
    except (AttributeError, TypeError, ValueError):
        return set()


def has_content(names: set[bytes], fields: Fields) -> bool:
    return b'transfer-encoding' in names or b'content-length' in names and any(
        name.lower() == b'content-length' and set(value) - set(b'0 \t') for name, value in fields)


def refused(method: bytes, origin: Origin, cause: Exception, why: str = '') -> HttpConnectionError:
    error = HttpConnectionError(f'{shown_method(method)} {origin.name}, refused: {why or cause}')
    error.phase = Phase.REFUSED
    return error


def no_credentials(method: bytes, origin: Origin, cause: ProxyError) -> HttpDataError:
    """The proxy has the request, so it may have been sent whole."""
    error = HttpDataError(f'{shown_method(method)} {origin.name}: {cause}')
    error.phase = Phase.HEAD
    error.response_started = True
    return error


def after_407(error: HttpError) -> HttpDataError:
    """A layer that retries must know that something was sent before."""
    answered = HttpDataError(f'after a first answer, 407: {error}')
    answered.reused = error.reused
    answered.phase = error.phase
    answered.response_started = True
    return answered


def shown_method(method: object) -> str:
    return method.decode('latin-1')[:60] if isinstance(method, bytes) else type(method).__name__


# Each layer that makes a second request has its own copy of these two functions. A module that
# they share would be one more thing to install, and lowhaio itself has no use for them.

def reiterable(values: Any) -> Any:
    """The same values, as a tuple if they could be iterated over only once."""
    if type(values) is tuple:
        return values
    return tuple(values) if isinstance(values, Iterator) else values


async def drain(body: Any) -> None:
    """Read the rest of a response body, so that its connection can be used again, and close it.

    If the body is too long, too slow or cut off, its connection is closed instead.
    """
    left = MAX_DRAINED
    try:
        with contextlib.suppress(HttpError, TimeoutError):
            async with asyncio.timeout(DRAIN_TIMEOUT):
                async for chunk in body:
                    left -= len(chunk) + 1024
                    if left < 0:
                        break
    finally:
        await body.aclose()


# -------------------------------------------------------------------------------- credentials

class Login:
    """What all requests to one proxy share: who logs in, and the last digest challenge."""

    __slots__ = ('user', 'password', 'challenge', 'is_accepted')

    def __init__(self, user: bytes, password: bytes) -> None:
        self.user = user
        self.password = password
        self.challenge: Challenge | None = None
        # The password as it is was enough for a request.
        self.is_accepted = False

    def __repr__(self) -> str:
        return f'<Login challenge={self.challenge!r}>'


class Turn:
    """One request to a proxy, and the challenges that it has got.

    The first one has the password as it is (RFC 7617), as proxies expect it. From the first
    challenge for a digest (RFC 7616) on, that is what the proxy gets.
    """

    __slots__ = ('login', 'method', 'target', 'answered', 'count')

    def __init__(self, login: Login | None, method: bytes, target: bytes) -> None:
        self.login = login
        self.method = method
        self.target = target
        # The challenge that the last attempt has answered, and how many have come.
        self.answered: Challenge | None = None
        self.count = 0

    def __repr__(self) -> str:
        return f'<Turn count={self.count}>'

    def fields(self) -> Fields:
        login = self.login
        if login is None:
            return ()
        self.answered = login.challenge
        value = b'Basic ' + b64encode(login.user + b':' + login.password) \
            if login.challenge is None else login.challenge.answer(
                login.user, login.password, self.method, self.target, ())
        return (b'proxy-authorization', value),

    def expectation(self, may_wait: bool) -> Fields:
        """Let content wait until the credentials are known to be good (RFC 9110 10.1.1).

        Otherwise the 407 could be lost, if the proxy closes the connection before it has read all.
        Squid 5 does not, but reads no other request of a connection if more than 64 KiB came.
        """
        login = self.login
        return ((b'expect', b'100-continue'),) if (
            may_wait and login is not None and not login.is_accepted) else ()

    def note_accepted(self) -> None:
        if self.login is not None and self.login.challenge is None:
            self.login.is_accepted = True

    def is_challenged(self, headers: Fields) -> bool:
        """Whether the request must be made again after this 407."""
        if self.login is None:
            return False
        new = best_challenge(headers, name=b'proxy-authenticate')
        # Of a challenge to an earlier request, the proxy may know nothing any more. That would be
        # no wrong password. One who wants a hash of the content too does not get it.
        if (new is None or new.qop == b'auth-int' or self.count == MAX_CHALLENGES
                or self.count and self.answered is not None and not new.is_stale):
            return False
        self.login.challenge = new
        self.login.is_accepted = False
        self.count += 1
        return True


# ------------------------------------------------------------------------------------ tunnels

class Tunnels:
    """The `get_connection` of one proxy: connects to it, and asks it for a tunnel."""

    __slots__ = ('proxy', 'login', 'connect', 'look_up', 'get_ssl_context')

    def __init__(self, proxy: Proxy, login: Login | None, pools: Pools) -> None:
        self.proxy = proxy
        self.login = login
        self.connect: Connect = pools.connect
        self.look_up: LookUp = pools.look_up
        self.get_ssl_context = pools.get_proxy_ssl_context

    def __repr__(self) -> str:
        return f'<Tunnels through {self.proxy!r}>'

    async def __call__(self, scheme: str, host: str, port: int) -> socket.socket:
        asked = authority(without_zone(host), port)
        open_tunnel = self.open_by_connect if self.proxy.is_http else self.open_by_socks
        try:
            return await open_tunnel(asked, host, port)
        except (OSError, EOFError) as cause:
            raise ProxyError(f'the proxy {self.proxy.name}, asked to connect to {asked}: '
                             f'{cause or type(cause).__name__}') from cause

    async def reach(self) -> socket.socket:
        """A socket that leads to the proxy."""
        context = self.get_ssl_context() if self.proxy.scheme == 'https' else None
        try:
            sock = await self.connect(self.proxy.host, self.proxy.port)
        except HttpError as cause:
            raise ProxyError(f'the proxy {self.proxy.name} was not reached: {cause}') from cause
        if context is None:
            return sock
        try:
            return await relayed(sock, context, without_zone(self.proxy.host))
        except (OSError, ValueError) as cause:
            raise ProxyError(f'the proxy {self.proxy.name}: the TLS handshake failed: '
                             f'{cause or type(cause).__name__}') from cause

    async def open_by_connect(self, asked: str, host: str, port: int) -> socket.socket:
        """RFC 9110 9.3.6. After a challenge there is a new connection: the proxy need not keep it,
        and no other tunnel needs the challenge then."""
        target = asked.encode()
        turn = Turn(self.login, b'CONNECT', target)
        while True:
            sock = await self.reach()
            with closing_unless_kept(sock) as keep:
                fields = ((b'host', target), *self.proxy.headers, *turn.fields())
                await send(sock, b'CONNECT %b HTTP/1.1\r\n%b\r\n' % (
                    target, b''.join(b'%b: %b\r\n' % field for field in fields)))
                code, reason, headers = await read_answer(sock)
                if code.startswith(b'2'):
                    check_quiet(sock)
                    return keep()
                if code != b'407' or not turn.is_challenged(headers):
                    error = ProxyError(
                        f'the proxy {self.proxy.name}, asked to connect to {asked}, answered '
                        f'{status(code, reason)}{await said_over(sock, headers)}')
                    error.code, error.headers, error.is_lasting = code, headers, code in LASTING
                    raise error

    async def open_by_socks(self, asked: str, host: str, port: int) -> socket.socket:
        """RFC 1928 with the method of RFC 1929, or none."""
        address = await self.socks_address(host)
        sock = await self.reach()
        with closing_unless_kept(sock) as keep:
            await send(sock, b'\5\1\0' if self.proxy.auth is None else b'\5\2\0\2')
            await self.log_in(sock, await receive(sock, 2))
            await send(sock, b'\5\1\0%b%b' % (address, port.to_bytes(2)))
            version, reply, _, kind = await receive(sock, 4)
            if version != 5:
                raise self.refusal(f'answered version {version} in place of 5')
            if reply:
                words, is_lasting = SOCKS_REPLIES.get(reply, ('an unknown code', False))
                raise self.refusal(f'asked to connect to {asked}, answered {reply}: {words}',
                                   is_lasting)
            # The address that it connects from. A name has its length before it.
            length = {1: 4, 4: 16}.get(kind) or (await receive(sock, 1))[0]
            await receive(sock, length + 2)
            check_quiet(sock)
            return keep()

    async def socks_address(self, host: str) -> bytes:
        """RFC 1928 5. An address needs no zone, since it is not of this machine."""
        address = parse_address(host)
        if address is None and self.proxy.scheme == 'socks5':
            address = (await self.look_up(host))[0]
        if address is None:
            return b'\3%c%b' % (len(host), host.encode())
        return (b'\1' if address.version == 4 else b'\4') + address.packed

    async def log_in(self, sock: socket.socket, answer: bytes) -> None:
        version, method = answer
        if version != 5:
            raise self.refusal(f'does not speak SOCKS5: it answered {answer!r}')
        if method == 2 and self.proxy.auth is not None:
            user, password = self.proxy.auth
            await send(sock, b'\1%c%b%c%b' % (len(user), user, len(password), password))
            _, verdict = await receive(sock, 2)
            if verdict:
                raise self.refusal('does not accept the user and the password', True)
        elif method:
            raise self.refusal('wants another authentication than a user and a password'
                               if self.proxy.auth else 'wants a user and a password, or another '
                               'authentication', True)

    def refusal(self, why: str, is_lasting: bool = False) -> ProxyError:
        comma = ', ' if why.startswith('asked') else ' '
        error = ProxyError(f'the proxy {self.proxy.name}{comma}{why}')
        error.is_lasting = is_lasting
        return error


# RFC 1928 6, and whether the same would be answered again.
SOCKS_REPLIES = {
    1: ('a general failure', False),
    2: ('its rules do not allow that', True),
    3: ('the network can not be reached', False),
    4: ('the host can not be reached', False),
    5: ('the connection was refused', False),
    6: ('the time to live has expired', False),
    7: ('it does not know the command', True),
    8: ('it does not know this type of address', True),
}


@contextlib.contextmanager
def closing_unless_kept(sock: socket.socket) -> Iterator[Callable[[], socket.socket]]:
    kept = False

    def keep() -> socket.socket:
        nonlocal kept
        kept = True
        return sock

    try:
        yield keep
    finally:
        if not kept:
            sock.close()


# ------------------------------------------------------------------- what a proxy answers
#
# The bytes after an answer belong to the tunnel. So they are looked at in the kernel, and only
# those of the answer are taken.

HEAD_END = re.compile(rb'\r?\n\r?\n')
STATUS_LINE = re.compile(rb'HTTP/1\.[0-9] ([1-9][0-9]{2})(?: ([^\r\n\0]*))?')
FIELD_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*+([^\r\n\0]*)")
TITLE = re.compile(rb'<title[^>]*>([^<]+)', re.IGNORECASE)
CONTROL = re.compile('[\x00-\x1f\x7f-\x9f]')
# The first line of a page, after the length of a chunk if it is chunked.
FIRST_LINE = re.compile(rb'(?:[0-9A-Fa-f]+\r\n)?\s*([^\r\n]*)')


async def read_answer(sock: socket.socket) -> tuple[bytes, bytes, Fields]:
    """Status, reason and fields of the final answer."""
    for _ in range(MAX_INTERIM_RESPONSES + 1):
        code, reason, headers = parse_head(await read_head(sock))
        if not code.startswith(b'1'):
            return code, reason, headers
    raise EOFError(f'it sent more than {MAX_INTERIM_RESPONSES} interim responses')


async def read_head(sock: socket.socket) -> bytes:
    head = b''
    while True:
        data = await peek(sock, MAX_HEAD + 1 - len(head))
        end = HEAD_END.search(head + data, max(0, len(head) - 3))
        taken = len(data) if end is None else end.end() - len(head)
        head += sock.recv(taken)
        if end is not None:
            return head
        if not data:
            raise EOFError(f'it closed the connection after {shown(head)}')
        if len(head) > MAX_HEAD:
            raise EOFError(
                f'its answer has a head of more than {MAX_HEAD} bytes: {shown(head)}')


def parse_head(head: bytes) -> tuple[bytes, bytes, Fields]:
    first, *lines = re.split(rb'\r?\n', head.rstrip(b'\r\n'))
    status_line = STATUS_LINE.fullmatch(first)
    if status_line is None:
        raise EOFError(f'it answered with no status line of HTTP/1: {shown(first)}')
    fields = []
    for line in lines:
        field = FIELD_LINE.fullmatch(line)
        if field is None:
            raise EOFError(f'it answered with a bad field: {shown(line)}')
        fields.append((field[1].lower(), field[2].rstrip(b' \t')))
    return status_line[1], status_line[2] or b'', tuple(fields)


def check_quiet(sock: socket.socket) -> None:
    """A server of HTTP or TLS waits for its client, so nothing can have come from it yet."""
    with contextlib.suppress(BlockingIOError):
        data = sock.recv(60, socket.MSG_PEEK)
        raise EOFError(f'after its answer it sent {data!r}, before the server could' if data else
                       'it closed the connection after its answer')


async def said_over(sock: socket.socket, headers: Fields) -> str:
    """What a refusal says, for its error, if that comes soon."""
    page = b''
    if (b'content-length', b'0') not in headers:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(PAGE_TIMEOUT):
                page = await asyncio.get_running_loop().sock_recv(sock, MAX_PAGE)
    return shown_page(page)


def shown_page(page: bytes) -> str:
    match = TITLE.search(page) or FIRST_LINE.match(page)
    assert match is not None
    text = ' '.join(match[1].decode('utf-8', 'replace').split())
    return f': {text[:MAX_SHOWN]!r}' if text else ''


def status(code: bytes, reason: bytes) -> str:
    """What it says may end up in a terminal, which would obey control characters."""
    text = CONTROL.sub('\N{REPLACEMENT CHARACTER}', reason.decode('latin-1'))
    return f'{code.decode()} {text}'.rstrip()[:MAX_SHOWN]


def shown(data: bytes) -> str:
    return repr(data[:60]) + ('...' if len(data) > 60 else '')


# ------------------------------------------------------------------------------------- sockets

async def send(sock: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, data)


async def receive(sock: socket.socket, length: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = b''
    while len(data) < length:
        more = await loop.sock_recv(sock, length - len(data))
        if not more:
            raise EOFError(f'it closed the connection after {shown(data)}')
        data += more
    return data


async def peek(sock: socket.socket, size: int) -> bytes:
    """What is there, or what comes first, without taking it."""
    while True:
        with contextlib.suppress(BlockingIOError):
            return sock.recv(size, socket.MSG_PEEK)
        await ready(sock)


async def ready(sock: socket.socket, is_writing: bool = False) -> None:
    """Wait until a socket is readable, or writable."""
    loop = asyncio.get_running_loop()
    woken = loop.create_future()
    add, remove = (loop.add_writer, loop.remove_writer) if is_writing else (
        loop.add_reader, loop.remove_reader)
    add(sock.fileno(), wake, woken)
    try:
        await woken
    finally:
        remove(sock.fileno())


def wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)


# --------------------------------------------------------------------------------- TLS in TLS

# In both directions TLS may have to read before it goes on, or to write.
TLS_BLOCKED = ssl.SSLWantReadError, ssl.SSLWantWriteError


async def relayed(sock: socket.socket, context: ssl.SSLContext, host: str) -> socket.socket:
    """Make TLS over a socket, and return one without TLS whose bytes go through it."""
    with closing_unless_kept(sock):
        # It takes the descriptor, so that there is nothing left to be closed then.
        tls = context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False,
                                  suppress_ragged_eofs=False)
    with closing_unless_kept(tls) as keep:
        while True:
            try:
                tls.do_handshake()
                break
            except TLS_BLOCKED as blocked:
                await ready(tls, isinstance(blocked, ssl.SSLWantWriteError))
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        Relay(asyncio.get_running_loop(), ours, cast(ssl.SSLSocket, keep())).move()
    return theirs


class Relay:
    """Moves bytes between a socket and TLS, by callbacks of the loop, until one of them ends.

    In each direction it holds what it has taken from one side until the other side has taken that,
    and takes no more meanwhile. So it holds 64 KiB in each direction at most, and who reads slowly
    slows the other side down. The loop holds it, through the callbacks.

    If the connection of the pool is closed, so are the other three ends, and if the proxy closes,
    the pool gets what came before, and then the end. That no part is missing then is up to the TLS
    within, which can tell.
    """

    __slots__ = ('loop', 'plain', 'tls', 'inward', 'outward', 'wanted', 'watched', 'timer',
                 'is_closed')

    def __init__(self, loop: Loop, plain: socket.socket, tls: ssl.SSLSocket) -> None:
        self.loop = loop
        self.plain = plain
        self.tls = tls
        # What was taken from one side, and not by the other. Inward is from TLS.
        self.inward = self.outward = b''
        # What the next move waits for, and what the loop watches: descriptors, and whether to
        # write.
        self.wanted: set[tuple[int, bool]] = set()
        self.watched: set[tuple[int, bool]] = set()
        self.timer: asyncio.TimerHandle | None = None
        self.is_closed = False

    def __repr__(self) -> str:
        return (f'<Relay {"closed, " if self.is_closed else ""}{len(self.inward)} bytes inward, '
                f'{len(self.outward)} outward>')

    def __del__(self) -> None:
        # The loop was closed, and there is nobody left to tell.
        self.tls.close()
        self.plain.close()

    def move(self) -> None:
        """Move what can be moved, and then wait for what is in the way."""
        if self.is_closed:
            return
        try:
            for _ in range(MAX_MOVES):
                self.wanted = set()
                # Both of them, one after the other.
                if not any([self.move_inward(), self.move_outward()]):
                    self.watch()
                    return
        except (OSError, EOFError) as error:
            self.close(error)
        else:
            # TLS may hold bytes that the loop does not see.
            self.loop.call_soon(self.move)

    def move_inward(self) -> bool:
        try:
            if not self.inward:
                self.inward = self.tls.recv(RELAYED)
                if not self.inward:
                    raise EOFError('the proxy has closed the connection')
            self.inward = self.inward[self.plain.send(self.inward):]
            return True
        except BlockingIOError:
            return self.wait_for(self.plain, True)
        except TLS_BLOCKED as blocked:
            return self.wait_for(self.tls, isinstance(blocked, ssl.SSLWantWriteError))

    def move_outward(self) -> bool:
        try:
            if not self.outward:
                self.outward = self.plain.recv(RELAYED)
                if not self.outward:
                    raise EndOfPool
            self.outward = self.outward[self.tls.send(self.outward):]
            return True
        except BlockingIOError:
            return self.wait_for(self.plain, False)
        except TLS_BLOCKED as blocked:
            return self.wait_for(self.tls, isinstance(blocked, ssl.SSLWantWriteError))

    def wait_for(self, sock: socket.socket, is_writing: bool) -> bool:
        self.wanted.add((sock.fileno(), is_writing))
        return False

    def watch(self) -> None:
        loop = self.loop
        for fd, is_writing in self.watched - self.wanted:
            (loop.remove_writer if is_writing else loop.remove_reader)(fd)
        for fd, is_writing in self.wanted - self.watched:
            (loop.add_writer if is_writing else loop.add_reader)(fd, self.move)
        self.watched = self.wanted
        if self.outward and self.timer is None:
            self.timer = loop.call_later(HANGUP_PAUSE, self.look)

    def look(self) -> None:
        """Close if our end has been closed. While the proxy takes nothing, nothing is taken from
        our end either, and so the loop would not tell."""
        self.timer = None
        poller = select.poll()
        poller.register(self.plain, 0)
        if poller.poll(0):
            self.close(EndOfPool())
        elif self.outward:
            self.timer = self.loop.call_later(HANGUP_PAUSE, self.look)

    def close(self, error: Exception) -> None:
        self.is_closed = True
        self.wanted = set()
        self.outward = b''
        self.watch()
        if self.timer is not None:
            self.timer.cancel()
        if isinstance(error, EndOfPool):
            # RFC 8446 6.1: say goodbye, without waiting for an answer.
            with contextlib.suppress(OSError, ValueError):
                self.tls.unwrap()
        forget_tls_error()
        self.tls.close()
        self.plain.close()


class EndOfPool(EOFError):
    """The pool has closed its end."""


def forget_tls_error() -> None:
    """Some versions of CPython leave a system's error of TLS to the next TLS call of the thread,
    which is that of another connection. To refuse a context its ciphers clears it."""
    with contextlib.suppress(ssl.SSLError):
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).set_ciphers('no such cipher')
