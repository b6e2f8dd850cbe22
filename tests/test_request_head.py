"""What is sent before the body: method, URL, host, parameters and fields, and what is refused
before anything is sent.
"""

import asyncio
import contextlib
import ipaddress
import os
import re
import socket
import string
import subprocess
import sys
import urllib.parse
from ipaddress import IPv4Address, IPv6Address

import aiodnsresolver
import pytest

import lowhaio
from lowhaio import HttpConnectionError, HttpError, buffered
from tests.harness import (
    OK,
    PATIENCE,
    ROOT,
    Answering,
    Server,
    Unused,
    certificates_for_what_is_sent,
    get,
    on_loops,
    on_one_loop,
    pool,
    wire_bytes,
    wire_table,
    with_length,
)


def refusals(*requests, http_version=b'HTTP/1.1'):
    """The errors of requests, each of which is refused before any DNS query or byte."""
    async def main():
        errors = []
        async with pool(http_version=http_version, **unused.options) as request:
            for kwargs in requests:
                with pytest.raises(HttpError) as caught:
                    await request(**kwargs)
                errors.append(caught.value)
        return errors

    unused = Unused()
    errors = asyncio.run(main())
    assert unused.uses == []
    for error in errors:
        assert type(error) is HttpConnectionError
        assert error.reused is False
        assert error.response_started is False
    return errors


def refusal(http_version=b'HTTP/1.1', **kwargs):
    return refusals(kwargs, http_version=http_version)[0]


# ---------------------------------------------------------------------------- what may not be sent

# Each row is one change to a request that is otherwise good: to its `method`, `url`, `headers` or
# `http_version`, with the whole message. Bytes are text of which each character is a byte.
REFUSED = wire_table('refused_requests')

# SECRET is wherever a caller may have one. No error shows it.
SECRET_URL = 'http://example.com/SECRET?SECRET#SECRET'
SECRET_HEADERS = ((b'authorization', b'SECRET'),)
NAMED = 'GET http://example.com:80, refused: '
UNNAMED = 'GET, refused: '


class UnhashableStr(str):
    __hash__ = None


# What Python says, which differs from version to version.
try:
    {}[UnhashableStr()]
except TypeError as error:
    UNHASHABLE = str(error)


@pytest.mark.parametrize('name', REFUSED)
def test_a_request_is_refused_before_any_dns_query_or_byte(name):
    row = REFUSED[name]
    arguments = {'method': b'GET', 'url': SECRET_URL, 'headers': SECRET_HEADERS}
    if 'method' in row:
        arguments['method'] = wire_bytes(row['method'])
    if 'headers' in row:
        arguments['headers'] = tuple(tuple(map(wire_bytes, field)) for field in row['headers'])
    if 'url' in row:
        arguments['url'] = row['url']
    version = wire_bytes(row.get('http_version', 'HTTP/1.1'))
    error = refusal(version, **arguments, params={'SECRET': 'SECRET'})
    assert str(error) == ''.join(row['message'])
    assert error.phase == 'refused'
    assert isinstance(error.__cause__, ValueError)
    assert str(error).endswith(f'refused: {error.__cause__}')


@pytest.mark.parametrize('changes, kind, message', [
    pytest.param({'method': 'GET'}, TypeError,
                 '(str) http://example.com:80, refused: method must be bytes, got str',
                 id='method-str'),
    pytest.param({'method': None}, TypeError,
                 '(NoneType) http://example.com:80, refused: method must be bytes, got NoneType',
                 id='method-none'),
    pytest.param({'method': bytearray(b'GET')}, TypeError,
                 '(bytearray) http://example.com:80, refused: method must be bytes, got bytearray',
                 id='method-bytearray'),
    *[pytest.param({'method': memoryview(method)}, TypeError,
                   '(memoryview) http://example.com:80, refused: method must be bytes, got '
                   'memoryview', id=f'method-memoryview-{method.decode()}')
      for method in (b'GET', b'XY')],
    pytest.param({'url': b'http://example.com/'}, TypeError,
                 UNNAMED + 'url must be a str, got bytes', id='url-bytes'),
    pytest.param({'url': None}, TypeError,
                 UNNAMED + 'url must be a str, got NoneType', id='url-none'),
    pytest.param({'url': UnhashableStr('http://example.com/')}, TypeError,
                 UNNAMED + UNHASHABLE, id='url-unhashable'),
    pytest.param({'url': ['http://example.com/']}, TypeError,
                 UNNAMED + 'url must be a str, got list', id='url-list'),
    pytest.param({'url': 'http://example.com/SE\ud800CRET'}, ValueError,
                 UNNAMED + 'url must be encodable as UTF-8, but has a lone surrogate',
                 id='target-lone-surrogate'),
    pytest.param({'params': 'SECRET=SECRET'}, TypeError,
                 NAMED + 'params must be a mapping or a sequence of pairs, as for '
                 'urllib.parse.urlencode, got str',
                 id='params-str'),
    pytest.param({'params': 5}, TypeError,
                 NAMED + 'params must be a mapping or a sequence of pairs, as for '
                 'urllib.parse.urlencode, got int',
                 id='params-int'),
    pytest.param({'params': [('SECRET',)]}, TypeError,
                 NAMED + 'params must be a mapping or a sequence of pairs, as for '
                 'urllib.parse.urlencode, got list',
                 id='params-no-pairs'),
    *[pytest.param({'params': params}, TypeError,
                   NAMED + 'params must be pairs of str, got pairs of bytes: were they headers?',
                   id=f'params-of-bytes-{name}')
      for name, params in {
          'tuple': ((b'authorization', b'SECRET'),), 'list': [(b'accept', b'a'), ('b', b'SECRET')],
          'last': [('a', 'b'), (b'authorization', b'SECRET')],
          'mapping': {b'authorization': b'SECRET'}}.items()],
    pytest.param({'params': {'SECRET': '\ud800'}}, TypeError,
                 NAMED + 'params must be a mapping or a sequence of pairs, as for '
                 'urllib.parse.urlencode, got dict',
                 id='params-lone-surrogate'),
    pytest.param({'headers': 5}, TypeError, NAMED + 'headers must be pairs of name and value, '
                 'both bytes, got int',
                 id='headers-no-iterable'),
    pytest.param({'headers': {b'SECRET': b'SECRET'}}, TypeError,
                 NAMED + 'headers must be pairs of name and value, both bytes, '
                 'got a dict: give its items()',
                 id='headers-mapping'),
    pytest.param({'headers': {b'xy': b'SECRET'}}, TypeError,
                 NAMED + 'headers must be pairs of name and value, both bytes, '
                 'got a dict: give its items()',
                 id='headers-mapping-of-names-of-two-bytes'),
    pytest.param({'headers': b'SECRET'}, TypeError,
                 NAMED + 'headers must be pairs of name and value, both bytes, got int',
                 id='headers-bytes'),
    pytest.param({'headers': ((b'SECRET',),)}, TypeError,
                 NAMED + 'headers must be pairs of name and value, both bytes, got (bytes)',
                 id='headers-one-item'),
    pytest.param({'headers': ((b'SECRET', b'SECRET', b''),)}, TypeError,
                 NAMED + 'headers must be pairs of name and value, both bytes, '
                 'got (bytes, bytes, bytes)',
                 id='headers-three-items'),
    pytest.param({'headers': (None,)}, TypeError,
                 NAMED + 'headers must be pairs of name and value, both bytes, got NoneType',
                 id='headers-none'),
    pytest.param({'headers': (('a', b'SECRET'),)}, TypeError,
                 NAMED + 'headers must be pairs of name and value, both bytes, got (str, bytes)',
                 id='headers-name-str'),
    pytest.param({'headers': [[b'a', 'SECRET']]}, TypeError,
                 NAMED + 'headers must be pairs of name and value, both bytes, got (bytes, str)',
                 id='headers-value-str'),
    pytest.param({'headers': ((b'a', 5),)}, TypeError,
                 NAMED + 'headers must be pairs of name and value, both bytes, got (bytes, int)',
                 id='headers-value-int'),
    pytest.param({'headers': ((b'a', None),)}, TypeError,
                 NAMED + 'headers must be pairs of name and value, both bytes, '
                 'got (bytes, NoneType)',
                 id='headers-value-none'),
    pytest.param({'headers': ((bytearray(b'a'), b'SECRET'),)}, TypeError,
                 NAMED + 'headers must be pairs of name and value, both bytes, '
                 'got (bytearray, bytes)',
                 id='headers-name-bytearray'),
    pytest.param({'headers': ((memoryview(b'a'), b'SECRET'),)}, TypeError,
                 NAMED + 'headers must be pairs of name and value, both bytes, '
                 'got (memoryview, bytes)',
                 id='headers-name-memoryview'),
    pytest.param({'headers': ((b'transfer-encoding', memoryview(b'chunked')),)}, TypeError,
                 NAMED + 'headers must be pairs of name and value, both bytes, '
                 'got (bytes, memoryview)',
                 id='headers-value-memoryview'),
])
def test_what_has_a_type_of_no_request_is_refused(changes, kind, message):
    arguments = {'method': b'GET', 'url': SECRET_URL, 'params': {'SECRET': 'SECRET'},
                 'headers': SECRET_HEADERS}
    error = refusal(**{**arguments, **changes})
    assert str(error) == message
    assert error.phase == 'refused'
    assert isinstance(error.__cause__, kind)
    assert message.endswith(f'refused: {error.__cause__}')


# Those that a table can not have, since they are long or no text, and the others.
LONG_AUTHORITIES = {
    'label-of-64': 'a' * 64 + '.example',
    'name-of-254': '.'.join(['a' * 49] * 5) + '.abcd',
    'name-of-407': 'a.' * 200 + 'example',
    'name-of-807-in-idna': 'ä.' * 100 + 'example',
    'zone-with-slash': '[fe80::1%25' + 'a' * 10_000 + '/]',
    'port-of-5000-digits': 'example.com:' + '9' * 5000,
    'label-of-64-in-idna': 'ä' * 64 + '.example',
    'lone-surrogate': 'a\ud800.example',
}
REFUSED_AUTHORITIES = {**wire_table('refused_authorities'), **LONG_AUTHORITIES}


@pytest.mark.parametrize('name', REFUSED_AUTHORITIES)
def test_an_authority_is_refused_before_any_dns_query_or_byte(name):
    for error in refusals(*[
            {'method': b'GET', 'url': f'{scheme}://{REFUSED_AUTHORITIES[name]}{rest}'}
            for scheme in ('http', 'https') for rest in ('', '/SECRET?SECRET#SECRET')]):
        assert isinstance(error.__cause__, ValueError)
        assert str(error) == f'GET, refused: {error.__cause__}'
        assert str(error).startswith('GET, refused: url must ')
        assert 'SECRET' not in str(error)
        assert len(str(error)) < 300


@pytest.mark.parametrize('authority, message', [
    ('a:b@example.com', 'url must not have userinfo (user:password@): use a header'),
    ('example.com:x', "url must have a host, and a port of digits if any, got 'example.com:x'"),
    ('example.com:65536', "url must have a port from 1 to 65535, got '65536'"),
    ('example.com:' + '9' * 30, f"url must have a port from 1 to 65535, got '{'9' * 20}'"),
    *[(host, 'url must have as host an IPv4 address, an IPv6 address in brackets, or a name of '
       f'letters, digits, "-", "_" and ".", got {host!r}')
      for host in ('[::1%]', '[::g]', '256.1.1.1', 'ä..example', 'a_b.1')],
    ('x' * 64, 'url must have as host an IPv4 address, an IPv6 address in brackets, or a name '
     f"""of letters, digits, "-", "_" and ".", got '{'x' * 60}'"""),
])
def test_the_refusal_of_an_authority_tells_what_was_expected_and_what_came(authority, message):
    error = refusal(method=b'GET', url=f'http://{authority}/')
    assert str(error) == f'GET, refused: {message}'


@pytest.mark.parametrize('authority, kind, text', [
    ('256.1.1.1', ipaddress.AddressValueError, "Octet 256 (> 255) not permitted in '256.1.1.1'"),
    ('[::g]', ipaddress.AddressValueError, "Only hex digits permitted in 'g' in '::g'"),
    ('[::1%]', ValueError, 'the zone must be of unreserved characters'),
    ('ä..example', UnicodeError, None),
])
def test_the_refusal_of_a_host_has_the_reason_in_its_causes(authority, kind, text):
    reason = refusal(method=b'GET', url=f'http://{authority}/').__cause__.__cause__
    assert isinstance(reason, kind)
    assert text in (None, str(reason))


@pytest.mark.parametrize('rest', [
    ':se/CRET@example.com/', ':se?CRET@example.com/', ':se#CRET@example.com/',
    ':99999/CRET@example.com/'])
def test_the_beginning_of_a_password_that_is_not_encoded_is_not_shown(rest):
    error = refusal(method=b'GET', url=f'http://user{rest}')
    assert str(error) == (
        'GET, refused: url must not have userinfo (user:password@): use a header')
    assert error.__cause__.__context__ is None or error.__cause__.__suppress_context__
    error = refusal(method=b'GET', url='http://[::g]/a@b')
    assert str(error).endswith("got '[::g]'")


def test_a_control_character_anywhere_in_a_url_is_refused():
    urls = [(before, chr(code), after)
            for code in (*range(0x20), *range(0x7f, 0xa0))
            for before, after in (('http://a', '/'), ('http://a/', ''), ('http://a/b', 'c'),
                                  ('http://a/?', ''), ('http://a/#', 'b'), ('', 'http://a/'),
                                  ('ht', 'tp://a/'), ('http://', 'a/'), ('http:', '//a/'))]
    errors = refusals(*[{'method': b'GET', 'url': ''.join(url)} for url in urls])
    for (before, character, _), error in zip(urls, errors, strict=True):
        assert type(error.__cause__) is ValueError
        assert str(error) == ('GET, refused: url must not contain control characters, got '
                              f'{character!r} at index {len(before)}')


def test_the_start_of_a_long_method_is_shown():
    error = refusal(method=b'A' * 70, url='http://example.com/', params=5)
    assert str(error).startswith('A' * 60)
    assert str(error).endswith(' http://example.com:80, refused: params must be a mapping or a '
                               'sequence of pairs, as for urllib.parse.urlencode, got int')


def test_what_the_headers_of_the_caller_raise_is_a_connection_error():
    def headers():
        yield b'a', b'b'
        raise LookupError('text')

    error = refusal(method=b'GET', url='http://example.com/', headers=headers())
    assert type(error.__cause__) is LookupError


# ------------------------------------------------------------------------------- what is sent, how


def resolver_to(address, asked=None):
    """A `get_dns_resolver` to whom every name is this address; it keeps what it was asked."""
    def get_dns_resolver(get_logger_adapter):
        async def resolve(name, kind, get_logger_adapter):
            if asked is not None:
                asked.append((name, kind))
            return (address,)

        async def clear_cache(get_logger_adapter):
            pass

        return resolve, clear_cache

    return get_dns_resolver


class Redirecting:
    """A `get_sock` whose sockets connect to one port, and keep where they were told to."""

    def __init__(self, port):
        self.port = port
        self.told = []

    def __call__(self, family):
        redirecting = self

        class Redirected(socket.socket):
            def connect(self, address):
                redirecting.told.append((family, address))
                super().connect(('127.0.0.1', redirecting.port))

        sock = Redirected(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        return sock


ELSEWHERE = IPv4Address('192.0.2.1')
ZONE_INDEX, ZONE = socket.if_nameindex()[0]

# The authority, the `host` field, the name asked for if it is no address, the address told.
AUTHORITIES = {
    'name': ('example.com', 'example.com', 'example.com', None),
    'name-of-one-label': ('localhost', 'localhost', 'localhost', None),
    'upper-case': ('EXAMPLE.Com', 'example.com', 'example.com', None),
    'trailing-dot': ('example.com.', 'example.com', 'example.com', None),
    'empty-port': ('example.com:', 'example.com', 'example.com', None),
    'default-port': ('example.com:80', 'example.com', 'example.com', None),
    'default-port-of-the-other-scheme': ('example.com:443', 'example.com:443', 'example.com',
                                         ('192.0.2.1', 443)),
    'lowest-port': ('example.com:1', 'example.com:1', 'example.com', ('192.0.2.1', 1)),
    'highest-port': ('example.com:65535', 'example.com:65535', 'example.com',
                     ('192.0.2.1', 65535)),
    'trailing-dot-and-port': ('example.com.:81', 'example.com:81', 'example.com',
                              ('192.0.2.1', 81)),
    'underscore': ('_a._b.example', '_a._b.example', '_a._b.example', None),
    'hyphens': ('-a-.b--c.example', '-a-.b--c.example', '-a-.b--c.example', None),
    'label-of-63': ('a' * 63 + '.example', 'a' * 63 + '.example', 'a' * 63 + '.example', None),
    'name-of-253': (('a' * 62 + '.') * 4 + 'b', ('a' * 62 + '.') * 4 + 'b',
                    ('a' * 62 + '.') * 4 + 'b', None),
    'name-of-253-and-a-dot': (('a' * 62 + '.') * 4 + 'b.', ('a' * 62 + '.') * 4 + 'b',
                              ('a' * 62 + '.') * 4 + 'b', None),
    'name-of-253-and-port': (('a' * 62 + '.') * 4 + 'b:8080', ('a' * 62 + '.') * 4 + 'b:8080',
                             ('a' * 62 + '.') * 4 + 'b', ('192.0.2.1', 8080)),
    'number-as-first-label': ('1.example', '1.example', '1.example', None),
    'hex-number-as-first-label': ('0x7f.example', '0x7f.example', '0x7f.example', None),
    'last-label-begins-with-a-number': ('a.1b', 'a.1b', 'a.1b', None),
    'last-label-begins-like-a-hex-number': ('a.0xfg', 'a.0xfg', 'a.0xfg', None),
    'idna': ('bücher.example', 'xn--bcher-kva.example', 'xn--bcher-kva.example', None),
    'idna-in-upper-case': ('BÜCHER.EXAMPLE', 'xn--bcher-kva.example', 'xn--bcher-kva.example',
                           None),
    'idna-decomposed': ('bu\u0308cher.example', 'xn--bcher-kva.example',
                        'xn--bcher-kva.example', None),
    'idna-encoded-before': ('XN--BCHER-KVA.example', 'xn--bcher-kva.example',
                            'xn--bcher-kva.example', None),
    'idna-trailing-dot': ('bücher.example.', 'xn--bcher-kva.example', 'xn--bcher-kva.example',
                          None),
    'idna-dots': ('bücher\u3002example\uff61', 'xn--bcher-kva.example', 'xn--bcher-kva.example',
                  None),
    'full-width': ('ｅｘａｍｐｌｅ．ｃｏｍ', 'example.com', 'example.com', None),
    'kelvin': ('\u212aelvin.example', 'kelvin.example', 'kelvin.example', None),
    'ipv4': ('127.0.0.1', '127.0.0.1', None, ('127.0.0.1', 80)),
    'ipv4-and-port': ('127.0.0.1:8080', '127.0.0.1:8080', None, ('127.0.0.1', 8080)),
    'ipv4-trailing-dot': ('127.0.0.1.', '127.0.0.1', None, ('127.0.0.1', 80)),
    'ipv4-full-width': ('１２７．0。0｡１', '127.0.0.1', None, ('127.0.0.1', 80)),
    'ipv4-highest': ('255.255.255.255', '255.255.255.255', None, ('255.255.255.255', 80)),
    'ipv6': ('[::1]', '[::1]', None, ('::1', 80, 0, 0)),
    'ipv6-and-port': ('[::1]:8080', '[::1]:8080', None, ('::1', 8080, 0, 0)),
    'ipv6-empty-port': ('[::1]:', '[::1]', None, ('::1', 80, 0, 0)),
    'ipv6-long': ('[2001:0DB8:0:0:0:0:0:0A]', '[2001:db8::a]', None, ('2001:db8::a', 80, 0, 0)),
    'ipv6-with-ipv4': ('[::ffff:1.2.3.4]', f'[{IPv6Address("::ffff:1.2.3.4")}]', None,
                       (str(IPv6Address('::ffff:1.2.3.4')), 80, 0, 0)),
    'zone': (f'[FE80::A%25{ZONE}]', '[fe80::a]', None, ('fe80::a', 80, 0, ZONE_INDEX)),
    'zone-and-port': (f'[fe80::a%25{ZONE}]:8080', '[fe80::a]:8080', None,
                      ('fe80::a', 8080, 0, ZONE_INDEX)),
    'zone-bare': (f'[fe80::a%{ZONE}]', '[fe80::a]', None, ('fe80::a', 80, 0, ZONE_INDEX)),
    'zone-number': ('[fe80::a%257]', '[fe80::a]', None, ('fe80::a', 80, 0, 7)),
}


@on_loops
async def test_a_host_has_one_form_for_the_resolver_the_connection_and_the_host_field():
    results, expected = {}, {}
    script = Answering(OK)
    async with Server(script) as server:
        for name, (authority, field, asked_for, told) in AUTHORITIES.items():
            asked = []
            redirecting = Redirecting(server.port)
            async with pool(get_dns_resolver=resolver_to(ELSEWHERE, asked),
                            get_sock=redirecting) as request:
                await get(request, f'http://{authority}/p')
            results[name] = script.heads[-1], asked, redirecting.told
            family = socket.AF_INET if told is None or len(told) == 2 else socket.AF_INET6
            expected[name] = (
                f'GET /p HTTP/1.1\r\nhost: {field}\r\n\r\n'.encode(),
                [] if asked_for is None else [(asked_for, aiodnsresolver.TYPES.A)],
                [(family, told or ('192.0.2.1', 80))])
    assert results == expected


# What IDNA 2003 takes for another name, and its form in IDNA 2008.
DEVIATIONS = {
    'sharp-s': ('faß.de', 'xn--fa-hia.de'),
    'sharp-s-in-upper-case': ('FAẞ.DE', 'xn--fa-hia.de'),
    'sharp-s-in-full-width': ('\uff46aß.de', 'xn--fa-hia.de'),
    'sharp-s-in-the-last-label': ('a.ß', 'a.xn--zca'),
    'sharp-s-and-a-final-dot': ('faß.de.', 'xn--fa-hia.de'),
    'sharp-s-and-dots': ('faß\u3002bücher\uff61', 'xn--fa-hia.xn--bcher-kva'),
    'sharp-s-and-an-accent': ('café-ß\uff0ede', 'xn--caf--yna2d.de'),
    'sharp-s-decomposed': ('cafe\u0301-ß.de', 'xn--caf--yna2d.de'),
    'sharp-s-beside-an-underscore': ('_a.faß.de', '_a.xn--fa-hia.de'),
    'sharp-s-beside-an-encoded-label': ('XN--BCHER-KVA.ß', 'xn--bcher-kva.xn--zca'),
    'final-sigma': ('βόλος.com', 'xn--nxasmm1c.com'),
    'final-sigma-and-another': ('ΒΌΛΟς.com', 'xn--nxasmm1c.com'),
    'non-joiner': ('نامه\u200cای.com', 'xn--mgba3gch31f060k.com'),
    'joiner': ('ශ්\u200dරී.com', 'xn--10cl1a0b660p.com'),
    'corrigendum-4': ('\U0002f868.de', 'xn--snl.de'),
}


@pytest.mark.parametrize('authority, expected', DEVIATIONS.values(), ids=DEVIATIONS)
@on_one_loop
async def test_a_name_that_idna_2003_takes_for_another_is_understood_by_idna_2008(
        authority, expected):
    asked = []
    script = Answering(OK)
    async with Server(script) as server:
        redirecting = Redirecting(server.port)
        async with pool(get_dns_resolver=resolver_to(ELSEWHERE, asked),
                        get_sock=redirecting) as request:
            for same in authority, expected:
                await get(request, f'http://{same}/')
    assert asked == [(expected, aiodnsresolver.TYPES.A)] * 2
    assert script.heads == [f'GET / HTTP/1.1\r\nhost: {expected}\r\n\r\n'.encode()] * 2
    assert script.connections == [0, 0]
    assert lowhaio.canonical_host(authority) == expected


@pytest.mark.parametrize('authority, expected', DEVIATIONS.values(), ids=DEVIATIONS)
@on_one_loop
async def test_without_the_package_it_is_refused_with_the_form_to_write(
        authority, expected, monkeypatch):
    monkeypatch.setitem(sys.modules, 'idna', None)
    asked = []
    async with pool(get_dns_resolver=resolver_to(ELSEWHERE, asked)) as request:
        with pytest.raises(HttpConnectionError) as caught:
            await request(b'GET', f'http://{authority}/SECRET')
    text = ('url must have as host a name that IDNA 2003 does not take for another one, got '
            f'{authority!r}: write {expected!r}, or install the package idna')
    assert str(caught.value) == f'GET, refused: {text}'
    assert type(caught.value.__cause__) is ValueError
    assert isinstance(caught.value.__cause__.__cause__, ImportError)
    assert asked == []
    with pytest.raises(ValueError, match=re.escape(text)):
        lowhaio.canonical_host(authority)


@pytest.mark.parametrize(
    'authority', ['☃ß.de', 'ß' * 63 + '.de', '☃\u200d.de', '[::1%ß]', '[ß]'])
@pytest.mark.parametrize('is_installed', [True, False])
@on_one_loop
async def test_a_name_that_idna_2008_forbids_is_refused(authority, is_installed, monkeypatch):
    if not is_installed:
        monkeypatch.setitem(sys.modules, 'idna', None)
    async with pool() as request:
        with pytest.raises(HttpConnectionError) as caught:
            await request(b'GET', f'http://{authority}/')
    what = f'{authority[:60]!r}'
    assert str(caught.value) == 'GET, refused: url must have as host a name that ' + (
        f'IDNA 2008 allows, got {what}' if is_installed else
        f'IDNA 2003 does not take for another one, got {what}: install the package idna')
    assert type(caught.value.__cause__) is ValueError


@pytest.mark.parametrize('host, expected', [
    ('Example.COM.', 'example.com'), ('BÜCHER.de', 'xn--bcher-kva.de'), ('127.0.0.1', '127.0.0.1'),
    ('[::0:1]', '::1'), ('[FE80::1%25a]', 'fe80::1%a'), ('☃.net', 'xn--n3h.net'),
])
@pytest.mark.parametrize('is_installed', [True, False])
def test_all_other_hosts_have_one_form_whatever_is_installed(
        host, expected, is_installed, monkeypatch):
    if not is_installed:
        monkeypatch.setitem(sys.modules, 'idna', None)
    assert lowhaio.canonical_host(host) == expected


def test_nothing_of_idna_is_imported_before_such_a_name_comes():
    code = ('import sys; from lowhaio import canonical_host; canonical_host("bücher.de"); '
            'print("idna" in sys.modules); canonical_host("faß.de"); print("idna" in sys.modules)')
    printed = subprocess.run(
        [sys.executable, '-c', code], check=True, env={**os.environ, 'PYTHONPATH': str(ROOT)},
        stdout=subprocess.PIPE, text=True, timeout=PATIENCE).stdout
    assert printed.split() == ['False', 'True']


@on_loops
async def test_a_zone_that_there_is_not_fails_to_connect():
    async with pool() as request:
        with pytest.raises(HttpConnectionError) as caught:
            await request(b'GET', 'http://[fe80::1%25lowhaio]:81/SECRET')
    assert str(caught.value).startswith(
        'GET http://[fe80::1%lowhaio]:81: connecting failed: fe80::1%lowhaio: OSError: ')
    assert type(caught.value.__cause__) is OSError


@on_loops
async def test_the_default_tls_offers_http_1_1_alone():
    async def script(peer):
        protocols.append(peer.writer.get_extra_info('ssl_object').selected_alpn_protocol())
        await peer.read_head()
        await peer.send(OK)

    protocols = []
    server_context, client_context, _ = certificates_for_what_is_sent()
    async with Server(script, server_context) as server, \
            pool(get_ssl_context=lambda: client_context) as request:
        assert (await get(request, server.url))[2] == b'ok'
    assert protocols == ['http/1.1']


@on_loops
async def test_the_spellings_of_an_origin_share_its_connections():
    script = Answering(OK)
    async with Server(script) as server, \
            pool(get_dns_resolver=resolver_to(IPv4Address('127.0.0.1'))) as request:
        for spelling in ('http://bücher.example', 'HTTP://BÜCHER.Example.',
                         'hTTp://xn--bcher-kva.EXAMPLE', 'http://bücher\uff0eexample'):
            await get(request, f'{spelling}:{server.port}')
        for spelling in ('http://127.0.0.1', 'http://127.0.0.1.', 'http://１２７.0.0.1'):
            await get(request, f'{spelling}:{server.port}')
    assert script.connections == [0, 0, 0, 0, 1, 1, 1]


@on_loops
async def test_a_host_has_one_form_for_tls_too_and_an_address_is_no_server_name():
    server_context, client_context, server_names = certificates_for_what_is_sent()
    server_names.clear()
    script = Answering(OK)
    redirecting = []
    async with Server(script, server_context) as server:
        for authority in ('BÜCHER.example.', 'faß.example', 'localhost:443', 'LocalHost.:8443',
                          '127.0.0.1', '127.0.0.1.:80', '[::1]', f'[::1%25{ZONE}]'):
            redirecting.append(Redirecting(server.port))
            async with pool(get_dns_resolver=resolver_to(ELSEWHERE), get_sock=redirecting[-1],
                            get_ssl_context=lambda: client_context) as request:
                await get(request, f'HTTPS://{authority}')
    hosts = ['xn--bcher-kva.example', 'xn--fa-hia.example', 'localhost', 'localhost:8443',
             '127.0.0.1', '127.0.0.1:80', '[::1]', '[::1]']
    assert script.heads == [f'GET / HTTP/1.1\r\nhost: {host}\r\n\r\n'.encode() for host in hosts]
    assert server_names == ['xn--bcher-kva.example', 'xn--fa-hia.example', 'localhost',
                            'localhost', None, None, None, None]
    assert [told for each in redirecting for _, told in each.told] == [
        ('192.0.2.1', 443), ('192.0.2.1', 443), ('192.0.2.1', 443), ('192.0.2.1', 8443),
        ('127.0.0.1', 443), ('127.0.0.1', 80), ('::1', 443, 0, 0), ('::1', 443, 0, ZONE_INDEX)]


# What follows the authority, `params`, and the request target.
TARGETS = {
    'nothing': ('', (), '/'),
    'slash': ('/', (), '/'),
    'query-without-path': ('?a', (), '/?a'),
    'empty-query': ('/?', (), '/?'),
    'empty-query-without-path': ('?', (), '/?'),
    'fragment': ('/a?b#c?d/e#f', (), '/a?b'),
    'fragment-without-path': ('#c', (), '/'),
    'fragment-with-a-lone-surrogate': ('/#\ud800', (), '/'),
    'dot-segments': ('/a/../b/./c', (), '/a/../b/./c'),
    'slashes': ('//a///b//', (), '//a///b//'),
    'a-url': ('/http://b/?http://c', (), '/http://b/?http://c'),
    'case': ('/A%2f%2Fa', (), '/A%2f%2Fa'),
    'encoded-unreserved': ('/%41%7e%2D', (), '/%41%7e%2D'),
    'encoded-control-characters': ('/%00%0d%0A', (), '/%00%0d%0A'),
    'percent-alone': ('/%', (), '/%25'),
    'percent-and-one-digit': ('/%a', (), '/%25a'),
    'percent-and-no-hex': ('/%g1%1g?%zz', (), '/%25g1%251g?%25zz'),
    'percent-twice': ('/%%41', (), '/%25%41'),
    'percent-and-full-width-digits': ('/%４１', (), '/%25%EF%BC%94%EF%BC%91'),
    'plus-and-space': ('/a+b c?d+e f', (), '/a+b%20c?d+e%20f'),
    'backslash': ('/\\..\\', (), '/%5C..%5C'),
    'not-ascii': ('/ä?ö=€&\U0001f600', (), '/%C3%A4?%C3%B6=%E2%82%AC&%F0%9F%98%80'),
    'line-separators': ('/\u2028\u2029\u00a0', (), '/%E2%80%A8%E2%80%A9%C2%A0'),
    'semicolons': ('/a;b?c;d', (), '/a;b?c;d'),
    'at-and-colon': ('/a@b:c?d@e:f', (), '/a@b:c?d@e:f'),
    'question-marks': ('/??a?b', (), '/??a?b'),
    'long': ('/' + 'a%41ä' * 5000, (), '/' + 'a%41%C3%A4' * 5000),

    'params': ('/', {'a': 'b'}, '/?a=b'),
    'params-without-path': ('', {'a': 'b'}, '/?a=b'),
    'params-pairs': ('/', (('a', 'b'), ('c', 'd'), ('a', 'e')), '/?a=b&c=d&a=e'),
    'params-list': ('/', [('b', '1'), ('a', '2')], '/?b=1&a=2'),
    'params-sequence-as-value': ('/', {'a': ['b', 'c'], 'd': ()}, '/?a=b&a=c'),
    'params-encoded': ('/', {'ä b': '&=+%/?#\r\n'}, '/?%C3%A4+b=%26%3D%2B%25%2F%3F%23%0D%0A'),
    'params-bytes': ('/', {'a': b'\xff', b'b': 'c', b'd': [b'e']}, '/?a=%FF&b=c&d=e'),
    'params-numbers': ('/', {'a': 1, 'b': None}, '/?a=1&b=None'),
    'params-after-a-query': ('/p?x', {'a': 'b'}, '/p?x&a=b'),
    'params-after-an-empty-query': ('/p?', {'a': 'b'}, '/p?a=b'),
    'params-after-an-ampersand': ('/p?x&', {'a': 'b'}, '/p?x&a=b'),
    'params-after-an-encoded-question-mark': ('/p%3F', {'a': 'b'}, '/p%3F?a=b'),
    'params-before-a-fragment': ('/p?x#f', {'a': 'b'}, '/p?x&a=b'),
    'params-before-a-fragment-with-a-query': ('/p#f?x', {'a': 'b'}, '/p?a=b'),
    'params-empty-tuple': ('/p?x', (), '/p?x'),
    'params-empty-mapping': ('/p', {}, '/p'),
    'params-none': ('/p', None, '/p'),
}


@on_loops
async def test_the_target_is_what_the_caller_gave_with_only_the_illegal_encoded():
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        for suffix, params, _ in TARGETS.values():
            await get(request, server.origin + suffix, params=params)
    sent = {name: head.split(b' ')[1].decode()
            for name, head in zip(TARGETS, script.heads, strict=True)}
    assert sent == {name: target for name, (_, _, target) in TARGETS.items()}


@on_loops
async def test_each_printable_character_of_a_target_is_sent_or_encoded_as_rfc_3986_has_it():
    printable = string.ascii_letters + string.digits + string.punctuation + ' '
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        for character in printable:
            if character not in '#%':
                await get(request, f'{server.url}x{character}?x{character}x')
        sent = [head.split(b' ')[1].decode() for head in script.heads]
    # The sets of 3.3 and 3.4, by name: unreserved, sub-delims, and what each part adds.
    allowed = '-._~' "!$&'()*+,;=" ':@'
    encoded = [urllib.parse.quote(character, safe=allowed + '/?')
               for character in printable if character not in '#%']
    assert sent == [f'/x{character}?x{character}x' for character in encoded]


@on_loops
async def test_params_that_are_no_query_change_nothing():
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        await get(request, server.url + 'p', params={'a': []})
    assert script.heads[0].startswith(b'GET /p HTTP/1.1\r\n')


# What the caller gives as `headers`, and all that follows the request line, of `host: H`.
HEADERS = {
    'none': ((), b'host: H\r\n\r\n'),
    'one': (((b'a', b'b'),), b'host: H\r\na: b\r\n\r\n'),
    'order-case-and-duplicates': (
        ((b'X-b', b'1'), (b'x-A', b'2'), (b'X-B', b'3'), (b'x-b', b'1')),
        b'host: H\r\nX-b: 1\r\nx-A: 2\r\nX-B: 3\r\nx-b: 1\r\n\r\n'),
    'list-of-lists': ([[b'a', b'b'], [b'c', b'd']], b'host: H\r\na: b\r\nc: d\r\n\r\n'),
    'items-of-a-mapping': ({b'a': b'b', b'c': b'd'}.items(),
                           b'host: H\r\na: b\r\nc: d\r\n\r\n'),
    'host': (((b'host', b'other'),), b'host: other\r\n\r\n'),
    'host-in-its-place': (((b'a', b'b'), (b'HoSt', b'other:1'), (b'c', b'd')),
                          b'a: b\r\nHoSt: other:1\r\nc: d\r\n\r\n'),
    **{f'host-{value.decode()}': (((b'host', value),), b'host: %b\r\n\r\n' % value)
       for value in (b'a_b.example:8080', b'EXAMPLE.com.', b'127.0.0.1', b'[::1]:', b' a\t',
                     b'[2001:DB8::a]:65535', b'%2Frun%2Fdocker.sock', b"a~!$&'()*+;=b")},
    'names-like-host': (((b'x-host', b'1'), (b'hosts', b'2')),
                        b'host: H\r\nx-host: 1\r\nhosts: 2\r\n\r\n'),
    'value-empty': (((b'a', b''),), b'host: H\r\na: \r\n\r\n'),
    'value-spaces': (((b'a', b' \t b\t '),), b'host: H\r\na:  \t b\t \r\n\r\n'),
    'value-not-ascii': (((b'a', b'\x80\xff'),), b'host: H\r\na: \x80\xff\r\n\r\n'),
    'value-percent': (((b'a', b'%s%(b)d%%'),), b'host: H\r\na: %s%(b)d%%\r\n\r\n'),
    'upgrade': (((b'Upgrade', b'a'),), b'host: H\r\nUpgrade: a\r\n\r\n'),
    'content-length-0': (((b'Content-Length', b'0'),), b'host: H\r\nContent-Length: 0\r\n\r\n'),
    'content-length-with-zeros': (((b'content-length', b'0' * 20),),
                                  b'host: H\r\ncontent-length: %b\r\n\r\n' % (b'0' * 20)),
    'nothing-is-added': (((b'connection', b'keep-alive'), (b'accept', b'*/*')),
                         b'host: H\r\nconnection: keep-alive\r\naccept: */*\r\n\r\n'),
}


@pytest.mark.parametrize('http_version', [b'HTTP/1.1', b'HTTP/1.0'])
@on_loops
async def test_the_head_is_what_the_caller_gave_after_host(http_version):
    script = Answering(with_length(b'connection: keep-alive'))
    async with Server(script) as server, pool(http_version=http_version) as request:
        for headers, _ in HEADERS.values():
            await request(b'PUT', server.url, (), headers)
        field = f'host: 127.0.0.1:{server.port}'.encode()
    assert dict(zip(HEADERS, script.heads, strict=True)) == {
        name: b'PUT / %b\r\n' % http_version + rest.replace(b'host: H', field)
        for name, (_, rest) in HEADERS.items()}
    assert set(script.connections) == {0}


@pytest.mark.parametrize('values, connections', [
    ([], [0, 0]),
    ([b'keep-alive'], [0, 0]),
    ([b'close'], [0, 1]),
    ([b'a ,\tCLOSE , b'], [0, 1]),
    ([b'a', b'close', b'b'], [0, 1]),
    ([b'closed, x-close, close-x'], [0, 0]),
])
@on_loops
async def test_a_request_with_connection_close_is_the_last_of_its_connection(values, connections):
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        for _ in range(2):
            await get(request, server.url,
                      headers=tuple((b'Connection', value) for value in values))
    assert script.connections == connections


@on_loops
async def test_headers_may_come_from_a_generator():
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        await get(request, server.url, headers=((name, b'1') for name in (b'a', b'b')))
        await get(request, server.url, headers=(() for _ in ()))
        field = f'host: 127.0.0.1:{server.port}\r\n'.encode()
    assert script.heads == [b'GET / HTTP/1.1\r\n' + field + b'a: 1\r\nb: 1\r\n\r\n',
                            b'GET / HTTP/1.1\r\n' + field + b'\r\n']


@on_loops
async def test_a_field_may_come_from_an_iterator_or_is_refused():
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        with contextlib.suppress(HttpConnectionError):
            await get(request, server.url, headers=(map(str.encode, ('a', 'b')),))
            assert script.heads[0].endswith(b'\r\na: b\r\n\r\n')
        await get(request, server.url)
    assert script.heads[-1].startswith(b'GET / ')


@on_loops
async def test_each_byte_of_a_method_and_of_a_field_is_sent_or_refused():
    token = (string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~").encode()
    value = bytes({*range(256)} - {*range(0x20), 0x7f} | {0x09})
    places = {
        'method': (lambda byte: (byte, ()), token),
        'method-inside': (lambda byte: (b'a' + byte + b'b', ()), token),
        'name': (lambda byte: (b'GET', ((byte, b''),)), token),
        'name-inside': (lambda byte: (b'GET', ((b'a' + byte + b'b', b''),)), token),
        'value': (lambda byte: (b'GET', ((b'a', byte),)), value),
        'value-inside': (lambda byte: (b'GET', ((b'a', b'b' + byte + b'c'),)), value),
    }
    results = {}
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        field = f'host: 127.0.0.1:{server.port}\r\n'.encode()
        for place, (arguments, _) in places.items():
            sent = []
            for code in range(256):
                method, headers = arguments(bytes([code]))
                with contextlib.suppress(HttpConnectionError):
                    await get_as(request, method, server.url, headers)
                    sent.append(code)
                    lines = [b'%b: %b\r\n' % pair for pair in headers]
                    assert script.heads[-1] == b'%b / HTTP/1.1\r\n%b%b\r\n' % (
                        method, field, b''.join(lines))
            results[place] = bytes(sent)
    assert results == {place: bytes(sorted(allowed)) for place, (_, allowed) in places.items()}
    assert set(script.connections) == {0}


async def get_as(request, method, url, headers):
    _, _, body = await request(method, url, headers=headers)
    return await buffered(body)
