"""Timelines for other programs: as JSON of our own, and as an HTTP Archive."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import unquote_plus

from lowhaio import Fields

from .redaction import REDACTED, redacted, shown_fields
from .timelines import Failure, Response, Timeline

VERSION = '0.1.0'

# What a HAR file has in place of a response.
NO_RESPONSE = Response(0, '', ())


# ---------------------------------------------------------------------------------------- JSON

def timings(timeline: Timeline, *, with_secrets: bool = False) -> dict[str, Any]:
    """A timeline as an object for JSON. Times are seconds since its begin, and sizes are bytes.

    README.md has its shape. Secrets are replaced by `REDACTED` unless they are wanted.
    """
    def since(begin: float) -> float:
        return round(begin - timeline.started, 9)

    def spent(part: Any) -> dict[str, float]:
        return {'start': since(part.started), 'duration': round(part.ended - part.started, 9)}

    connection, response = timeline.connection, timeline.response
    sizes = timeline.sizes
    return {
        'request': timeline.number,
        'method': timeline.method,
        'url': redacted(timeline.url, with_secrets),
        'started': timeline.started_at.isoformat(timespec='microseconds'),
        'duration': since(timeline.last),
        'ended': 'ended' in timeline.times,
        'status': response.code if response is not None else None,
        'http_version': response.http_version if response is not None else None,
        'phases': [{'name': span.name, **spent(span)} for span in timeline.phases],
        'lookups': [{'host': each.host, **spent(each), 'addresses': list(each.addresses),
                     'error': shown_failure(each.failure)} for each in timeline.lookups],
        'attempts': [{'peer': each.peer, **spent(each), 'outcome': each.outcome,
                      'connection': each.connection, 'error': shown_failure(each.failure)}
                     for each in timeline.attempts],
        'tls': shown_tls(timeline),
        'connection': None if connection is None else {
            'number': connection.number, 'request': connection.request, 'peer': connection.peer,
            'local': connection.local, 'closed': timeline.closing},
        'sent': {'head': sizes.sent_head, 'body': sizes.sent_body},
        'received': {'head': sizes.head, 'body': sizes.body},
        'request_headers': shown_fields(timeline.headers, with_secrets),
        'headers': shown_fields(response.headers if response is not None else (), with_secrets),
        'error': shown_failure(timeline.failure),
    }


def shown_tls(timeline: Timeline) -> dict[str, Any] | None:
    """The handshake, or without one what is known of the connection, or None without TLS."""
    tls, connection = timeline.tls, timeline.connection
    if tls is not None:
        return {'version': tls.version, 'cipher': tls.cipher, 'resumed': tls.is_resumed,
                'error': shown_failure(tls.failure)}
    if connection is None or connection.tls_version is None:
        return None
    return {'version': connection.tls_version, 'cipher': connection.cipher, 'resumed': None,
            'error': None}


def shown_failure(failure: Failure | None) -> dict[str, str | None] | None:
    return failure._asdict() if failure is not None else None


# ----------------------------------------------------------------------------------------- HAR
#
# HTTP Archive 1.2, which browsers and most tools read: http://www.softwareishard.com/blog/har-12-spec/
# Its times are milliseconds. What does not apply is -1.

def har(timelines: Iterable[Timeline], *, with_secrets: bool = False) -> dict[str, Any]:
    """The timelines as an object for a HAR 1.2 file, which `json.dump` can write.

    Secrets in URLs and headers are replaced by `REDACTED` unless they are wanted. The content of
    requests and responses is what `Recorder.around` has kept, and nothing is replaced in it. A
    request without a response has the status 0, and `_error` says why one failed, as browsers do
    it.
    """
    return {'log': {
        'version': '1.2',
        'creator': {'name': 'lowhaio-waterfall', 'version': VERSION},
        'entries': [har_entry(timeline, with_secrets) for timeline in timelines],
    }}


def har_entry(timeline: Timeline, with_secrets: bool) -> dict[str, Any]:
    times = har_timings(timeline)
    entry = {
        'startedDateTime': timeline.started_at.isoformat(timespec='microseconds'),
        # `connect` has the time of `ssl` in it.
        'time': round(sum(value for name, value in times.items()
                          if name != 'ssl' and value > 0), 3),
        'request': har_request(timeline, with_secrets),
        'response': har_response(timeline, with_secrets),
        'cache': {},
        'timings': times,
        # What browsers call it that do not know from where in a page a request comes.
        '_resourceType': 'fetch',
    }
    connection = timeline.connection
    # A request that came no further than TLS has no connection, but an attempt that made one.
    last = timeline.attempts[-1] if timeline.attempts else None
    peer = connection.peer if connection is not None else last and last.peer
    number = connection.number if connection is not None else last and last.connection
    if peer:
        entry['serverIPAddress'] = peer.rpartition(':')[0].strip('[]')
    if number:
        entry['connection'] = str(number)
    return entry


def har_timings(timeline: Timeline) -> dict[str, float]:
    seconds = timeline.durations

    def milliseconds(*names: str) -> float:
        return round(1000 * sum(seconds.get(name, 0) for name in names), 3)

    has_tls = 'tls' in seconds
    return {
        'blocked': milliseconds('client', 'place'),
        'dns': milliseconds('lookup') if timeline.lookups else -1,
        'connect': milliseconds('connect', 'tls') if timeline.attempts or has_tls else -1,
        'ssl': milliseconds('tls') if has_tls else -1,
        'send': milliseconds('send'),
        'wait': milliseconds('wait'),
        'receive': milliseconds('head', 'body'),
    }


def har_request(timeline: Timeline, with_secrets: bool) -> dict[str, Any]:
    url = redacted(timeline.url, with_secrets)
    fields = shown_fields(timeline.headers, with_secrets)
    query = url.partition('#')[0].partition('?')[2]
    request = {
        'method': timeline.method,
        'url': url,
        'httpVersion': 'HTTP/1.1',
        'cookies': har_cookies(timeline.headers, b'cookie', b';', with_secrets),
        'headers': har_pairs(fields),
        'queryString': har_pairs(tuple(map(unquote_plus, pair.partition('=')[::2]))
                                 for pair in query.split('&') if pair),
        'headersSize': timeline.sizes.sent_head or -1,
        'bodySize': timeline.sizes.sent_body,
    }
    if timeline.sent:
        kind = first_value(fields, 'content-type')
        request['postData'] = {'mimeType': kind, 'params': [],
                               'text': timeline.sent.decode('utf-8', 'replace')}
    return request


def har_response(timeline: Timeline, with_secrets: bool) -> dict[str, Any]:
    head = timeline.response or NO_RESPONSE
    fields = shown_fields(head.headers, with_secrets)
    response = {
        'status': head.code,
        'statusText': head.reason,
        'httpVersion': head.http_version,
        'cookies': har_cookies(head.headers, b'set-cookie', None, with_secrets),
        'headers': har_pairs(fields),
        'content': har_content(timeline, fields),
        'redirectURL': first_value(fields, 'location'),
        'headersSize': timeline.sizes.head or -1,
        'bodySize': timeline.sizes.body if head.code else -1,
    }
    if timeline.failure is not None:
        response['_error'] = str(timeline.failure)
    return response


def har_content(timeline: Timeline, fields: list[tuple[str, str]]) -> dict[str, Any]:
    kind = first_value(fields, 'content-type')
    content: dict[str, Any] = {'size': timeline.sizes.body, 'mimeType': kind or 'x-unknown'}
    coding = first_value(fields, 'content-encoding')
    if coding and timeline.received:
        # Readers take the text for what has been decoded.
        content['comment'] = f'left out, because it is encoded by {coding}'
    elif timeline.received:
        content.update(har_text(bytes(timeline.received)))
        if len(timeline.received) < timeline.sizes.body:
            content['comment'] = f'the first {len(timeline.received)} bytes'
    return content


def har_text(data: bytes) -> dict[str, str]:
    try:
        return {'text': data.decode()}
    except UnicodeDecodeError:
        return {'text': base64.b64encode(data).decode(), 'encoding': 'base64'}


def har_pairs(pairs: Iterable[Sequence[str]]) -> list[dict[str, str]]:
    return [{'name': name, 'value': value} for name, value in pairs]


def har_cookies(fields: Fields, name: bytes, separator: bytes | None,
                with_secrets: bool) -> list[dict[str, str]]:
    """The cookies of the fields of this name. A `set-cookie` has one, before its attributes."""
    values = (value for key, value in fields if key.lower() == name)
    pairs = (part.strip().decode('latin-1').partition('=')[::2] for value in values
             for part in (value.split(separator) if separator else [value.partition(b';')[0]]))
    return har_pairs((key, value if with_secrets else REDACTED) for key, value in pairs)


def first_value(fields: list[tuple[str, str]], name: str) -> str:
    return next((value for key, value in fields if key.lower() == name), '')
