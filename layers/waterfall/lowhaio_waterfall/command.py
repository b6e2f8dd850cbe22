"""The command `lowhaio-waterfall`: it makes requests, and shows them.

`parsed` makes of its arguments what requests and the pool are given, `made` makes the requests,
and `report` shows and writes what has become of them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import ipaddress
import json
import os
import re
import ssl
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from lowhaio import (
    Fields,
    GetResolver,
    HttpError,
    Pool,
    canonical_host,
    empty_async_iterator,
    get_dns_resolver_default,
    streamed,
)

from .archive import VERSION, har, timings
from .page import html
from .terminal import Waterfall, figures_table, folded, shown
from .timelines import AnyRequest, Recorder, Timeline

# Bytes of the content of one request, or of one response, that the command keeps for a HAR file.
MAX_CONTENT = 1_000_000

# The requests that one run of the command makes. All of their timelines are kept until the end.
MAX_CALLS = 10_000

# The requests of one run from which on each has only one line.
MAX_DETAILED = 8

FAILED, USAGE_ERROR, FILE_ERROR, INTERRUPTED = 1, 2, 3, 130

EPILOG = '''exit status: 0 if all requests were answered, whatever the status of the response; 1 if
one failed; 2 if the arguments are wrong; 3 if a file can not be written; 130 if interrupted.'''

# Seconds before each further attempt, with --retry. Later ones wait as long as the last.
RETRY_INTERVALS = (0, 1, 2, 4, 8)
RETRIED_CODES = (b'408', b'429', b'500', b'502', b'503', b'504')


@dataclass(slots=True)
class Call:
    """A URL that is asked for, with all requests that come of it."""

    url: str
    timelines: list[Timeline] = field(default_factory=list)
    failure: str = ''
    status: int = 0
    """The exit status that it asks for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `lowhaio-waterfall`: returns its exit status. README.md has its options."""
    options = parsed(arguments)
    calls = [Call(url) for _ in range(options.repeat) for url in options.urls]
    status = 0
    try:
        with opened(options.output) as output:
            asyncio.run(made(calls, options, output))
    except KeyboardInterrupt:
        status = INTERRUPTED
    except OSError as error:
        return complaint(f'{options.output}: {error.strerror}', FILE_ERROR)
    try:
        status = max(status, report(calls, options), *(call.status for call in calls))
        sys.stdout.flush()
    except OSError as error:
        # Python would try once more at its end, and complain.
        with open(os.devnull, 'wb') as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return complaint(f'-: {error.strerror}', FILE_ERROR)
    for call in calls:
        if call.status not in (0, FAILED):
            complaint(call.failure, call.status)
    return status


def complaint(message: str, status: int) -> int:
    print(f'lowhaio-waterfall: {shown(message)}', file=sys.stderr)
    return status


@contextlib.contextmanager
def opened(path: str | None) -> Iterator[IO[bytes] | None]:
    """A file to write to. `-` is the standard output."""
    if path is None:
        yield None
    elif path == '-':
        sys.stdout.flush()
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    else:
        # Without a buffer, since what can not be written is an error where it is written.
        with open(path, 'wb', buffering=0) as file:
            yield file


def write(file: IO[bytes], data: bytes) -> None:
    while data:
        data = data[file.write(data):]


# Making requests

async def made(calls: Sequence[Call], options: argparse.Namespace,
               output: IO[bytes] | None) -> None:
    """Make the calls, so many at once as there are to be."""
    recorder = Recorder(max_requests=MAX_CALLS)
    request, close = Pool(on_event=recorder, **options.pool)
    pending = iter(calls)

    async def work() -> None:
        for call in pending:
            await make(call, options, request, recorder, output)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(options.parallel):
                group.create_task(work())
    finally:
        # The timelines are done with: that their connections close now says nothing of them.
        recorder.clear()
        await close()


async def make(call: Call, options: argparse.Namespace, request: Any, recorder: Recorder,
               output: IO[bytes] | None) -> None:
    request = recorder.around(request, on_start=call.timelines.append,
                              max_content=MAX_CONTENT if options.har_content else 0)
    try:
        async with asyncio.timeout(options.max_time):
            _, _, body = await layered(request, options)(
                options.request, call.url, headers=options.headers, body=options.body,
                timeouts=options.timeouts)
            async for chunk in body:
                if output is not None:
                    write(output, chunk)
    except TimeoutError:
        call.failure, call.status = f'--max-time, {options.max_time:g} seconds, passed', FAILED
    except HttpError as error:
        # What was refused has no timeline.
        call.failure, call.status = str(error), FAILED if call.timelines else USAGE_ERROR
    except OSError as error:
        call.failure, call.status = f'{options.output}: {error.strerror}', FILE_ERROR


def layered(request: AnyRequest, options: argparse.Namespace) -> AnyRequest:
    if options.retry:
        from lowhaio_retry import retry

        intervals = tuple(RETRY_INTERVALS[min(number, len(RETRY_INTERVALS) - 1)]
                          for number in range(options.retry))
        request = retry(request, ((HttpError, intervals),),
                        code_intervals=[(code, intervals) for code in RETRIED_CODES])
    if options.location:
        from lowhaio_redirect import redirectable

        request = redirectable(request)
    return request


# Telling what happened

def report(calls: Sequence[Call], options: argparse.Namespace) -> int:
    """Write and show what there is. Returns the exit status if that fails, or 0."""
    timelines = sorted((timeline for call in calls for timeline in call.timelines),
                       key=lambda timeline: timeline.started)
    status = 0
    for path, made_of in (options.har, har_text_of), (options.html, html):
        try:
            with opened(path) as file:
                if file is not None:
                    text = made_of(timelines, with_secrets=options.with_secrets)
                    write(file, text.encode())
        except OSError as error:
            status = complaint(f'{path}: {error.strerror}', FILE_ERROR)
    if options.json:
        for number, call in enumerate(calls, 1):
            for timeline in call.timelines:
                print(json.dumps({'call': number} | timings(
                    timeline, with_secrets=options.with_secrets)))
    else:
        show(calls, timelines, options)
    return status


def har_text_of(timelines: Iterable[Timeline], *, with_secrets: bool) -> str:
    return json.dumps(har(timelines, with_secrets=with_secrets), indent=1)


def show(calls: Sequence[Call], timelines: Sequence[Timeline],
         options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.text import Text

    is_taken = '-' in (options.output, options.har, options.html)
    console = Console(stderr=is_taken, color_system=None if options.plain else 'auto',
                      highlight=False)
    shown_as = functools.partial(
        Waterfall, headers=options.include, with_secrets=options.with_secrets)
    if len(timelines) >= MAX_DETAILED:
        console.print(shown_as(timelines, is_overview=True))
        console.print()
    else:
        for call in calls:
            console.print(shown_as(call.timelines), end='')
    for call in calls:
        # A request has told why it failed, but not why it was cut off, or not followed any more.
        if call.status == FAILED and call.failure not in str(call.timelines[-1].failure):
            console.print(Text('\n'.join(folded(call.failure, console.width)), 'red'))
    if len(calls) > 1 and timelines:
        console.print(figures_table(timelines))


# The arguments

def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with what requests and the pool are given made of them.

    Exits with 2, and tells why, if they are wrong.
    """
    parser = parser_of_options()
    options = parser.parse_intermixed_args(arguments)
    try:
        check(options)
        data = content_of(options.data)
        options.request = (options.request or ('GET' if data is None else 'POST')).encode('ascii')
        options.headers = fields_of(options.header, data)
        options.body = empty_async_iterator if data is None else streamed(data)
        options.timeouts = ({} if options.connect_timeout is None
                            else {'connect': options.connect_timeout})
        options.pool = pool_options(options)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return options


def parser_of_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='lowhaio-waterfall', epilog=EPILOG, allow_abbrev=False,
        description='Shows what requests do, and where their time goes, as a waterfall.')
    add = parser.add_argument
    add('urls', nargs='+', metavar='URL', help='http or https')
    add('--version', action='version', version=VERSION)

    group = parser.add_argument_group('the requests')
    add = group.add_argument
    add('-X', '--request', metavar='METHOD', help='GET, or POST with --data')
    add('-H', '--header', action='append', default=[], metavar='FIELD',
        help="'name: value'; 'name:' leaves out a field that is sent by default")
    add('-d', '--data', action='append', metavar='DATA',
        help='the content, or @FILE, or - for the standard input; several are joined by &')
    add('-L', '--location', action='store_true', help='follow redirects')
    add('--retry', type=count(0), default=0, metavar='N',
        help='make a request again up to N times, as lowhaio-retry does it')
    add('--repeat', type=count(1), default=1, metavar='N', help='ask for each URL N times')
    add('--parallel', type=count(1), default=1, metavar='N', help='make N requests at once')

    group = parser.add_argument_group('the connections')
    add = group.add_argument
    add('-m', '--max-time', type=seconds, metavar='SECONDS', help='for a request, all in all')
    add('--connect-timeout', type=seconds, metavar='SECONDS', help='for connecting, TLS included')
    add('-k', '--insecure', action='store_true', help='do not verify certificates')
    add('--cacert', metavar='FILE', help='the authorities that are trusted, as PEM')
    add('--resolve', action='append', default=[], metavar='HOST:PORT:ADDRESS[,ADDRESS]',
        help='the addresses of a host, in place of a lookup')
    add('--http1.0', dest='http_version', action='store_const', const=b'HTTP/1.0',
        default=b'HTTP/1.1', help='send requests of HTTP/1.0')
    add('--max-connections', type=count(1), metavar='N', help='open N connections at most')

    group = parser.add_argument_group('the output')
    add = group.add_argument
    add('-i', '--include', action='store_true', help='show the header fields')
    add('-o', '--output', metavar='FILE', help='write the content of the response; - for stdout')
    add('--json', action='store_true', help='print a JSON object for each request')
    add('--har', metavar='FILE', help='write an HTTP Archive 1.2')
    add('--har-content', action='store_true', help='with what was sent and received in it')
    add('--html', metavar='FILE', help='write a page')
    add('--plain', action='store_true', help='no colours; also by NO_COLOR')
    add('--with-secrets', action='store_true', help='do not redact credentials and signatures')
    return parser


def count(least: int) -> Callable[[str], int]:
    """What reads a number of requests."""
    def read(text: str) -> int:
        if not re.fullmatch('[0-9]{1,9}', text) or int(text) < least:
            raise argparse.ArgumentTypeError(f'must be a number, {least} or more, got {text!r}')
        return int(text)

    return read


def seconds(text: str) -> float:
    """Read a time that can be waited for."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= 1e9:
            return float(text)
    raise argparse.ArgumentTypeError(f'must be seconds, more than 0, got {text!r}')


def check(options: argparse.Namespace) -> None:
    number = options.repeat * len(options.urls)
    if number > MAX_CALLS:
        raise ValueError(f'one run makes up to {MAX_CALLS} requests, not {number}')
    if options.output is not None and number > 1:
        raise ValueError('--output is for a single request')
    to_stdout = [options.output, options.har, options.html].count('-') + options.json
    if to_stdout > 1:
        raise ValueError('only one of --output, --json, --har and --html can go to stdout')
    if options.har_content and options.har is None:
        raise ValueError('--har-content needs --har')
    options.parallel = min(options.parallel, number)


def content_of(data: Sequence[str] | None) -> bytes | None:
    """What is to be sent, or None for nothing."""
    return None if data is None else b'&'.join(map(read_data, data))


def read_data(text: str) -> bytes:
    if text in ('-', '@-'):
        return sys.stdin.buffer.read()
    return Path(text[1:]).read_bytes() if text.startswith('@') else text.encode()


def fields_of(given: Sequence[str], data: bytes | None) -> Fields:
    """The fields that are sent: those that are given, and the default ones that are not."""
    pairs = []
    for text in given:
        name, colon, value = text.partition(':')
        if not colon or not name:
            raise ValueError(f"--header must be 'name: value', got {shown(name)!r}")
        pairs.append((name.encode('latin-1'), value.strip().encode('latin-1')))
    defaults = {b'user-agent': b'lowhaio-waterfall/' + VERSION.encode(), b'accept': b'*/*'}
    if data is not None:
        defaults[b'content-type'] = b'application/x-www-form-urlencoded'
        defaults[b'content-length'] = b'%d' % len(data)
    names = {name.lower() for name, _ in pairs}
    return (*((name, value) for name, value in defaults.items() if name not in names),
            *(pair for pair in pairs if pair[1]))


def pool_options(options: argparse.Namespace) -> dict[str, Any]:
    chosen: dict[str, Any] = {
        'http_version': options.http_version, 'max_connections': options.max_connections}
    if options.insecure or options.cacert is not None:
        context = ssl.create_default_context(cafile=options.cacert)
        context.set_alpn_protocols(['http/1.1'])
        if options.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        chosen['get_ssl_context'] = lambda: context
    if options.resolve:
        chosen['get_dns_resolver'] = resolver_with(dict(map(resolution, options.resolve)))
    return chosen


def resolution(text: str) -> tuple[str, list[Any]]:
    """A host as it is looked up, and its addresses. Its connections to all ports go there."""
    host, _, rest = text.partition(':')
    port, _, addresses = rest.partition(':')
    try:
        if not host or not re.fullmatch('[0-9]+|[*]', port):
            raise ValueError
        return canonical_host(host), [ipaddress.ip_address(address.strip('[]'))
                                      for address in addresses.split(',')]
    except ValueError:
        raise ValueError(f'--resolve must be HOST:PORT:ADDRESS, got {text!r}') from None


def resolver_with(hosts: dict[str, list[Any]]) -> GetResolver:
    """The default resolver, but for these hosts."""
    from aiodnsresolver import TYPES, DnsRecordDoesNotExist

    def get_dns_resolver(get_logger_adapter: Any) -> Any:
        resolve_others, clear_cache = get_dns_resolver_default(get_logger_adapter)

        async def resolve(host: str, record_type: Any, get_logger_adapter: Any) -> Any:
            if host not in hosts:
                return await resolve_others(
                    host, record_type, get_logger_adapter=get_logger_adapter)
            version = 4 if record_type == TYPES.A else 6
            found = [address for address in hosts[host] if address.version == version]
            if not found:
                raise DnsRecordDoesNotExist
            return found

        return resolve, clear_cache

    return get_dns_resolver
