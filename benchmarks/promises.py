"""Measures whether lowhaio keeps its promises about resources, and exits with 1 if it does not.

    python benchmarks/promises.py
    python benchmarks/promises.py --only tasks,timeouts --loop asyncio

tasks        no task, thread or executor is made, whatever the request and its outcome
timeouts     no kind of timeout leaves the caller's task with a cancellation
memory       a body of 1 GiB, received or sent, leaves the process below 40 MiB
descriptors  10,000 requests, with errors, cancellations and abandoned bodies among them, leave no
             descriptor, reader, writer or timer behind once the pool is closed
limits       the same holds for 3,000 requests that wait for each other's connections

All run on asyncio, and on uvloop if it can be imported. The servers run in a process of their own.
Needs trustme for a certificate.
"""
import argparse
import asyncio
import contextlib
import functools
import gc
import importlib.util
import json
import logging
import os
import resource
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

LIMIT_MIB = 40
REQUESTS = 10_000
SIZE = 1024 ** 3
CHUNK = bytes(65536)
TIMEOUT = 0.3  # seconds, for the pools whose requests should time out


# The servers, which run in a process of their own until its stdin closes
# -----------------------------------------------------------------------
#
# Each connection has a thread.

def fixed(status, *fields, body=b''):
    return b'\r\n'.join((b'HTTP/1.1 ' + status, *fields, b'', body))


RESPONSES = {
    '/small': fixed(b'200 OK', b'content-length: 5', body=b'small'),
    '/head': fixed(b'200 OK', b'content-length: 5'),
    '/empty': fixed(b'204 No Content'),
    '/chunked': fixed(b'200 OK', b'transfer-encoding: chunked',
                      body=b'2\r\nsm\r\n3\r\nall\r\n0\r\nx-sum: 5\r\n\r\n'),
    '/upload': fixed(b'201 Created', b'content-length: 0'),
    # The server closes the connection after these.
    '/close': fixed(b'200 OK', b'content-length: 5', b'connection: close', body=b'small'),
    '/to-the-end': fixed(b'200 OK', body=b'small'),
    '/short': fixed(b'200 OK', b'content-length: 9', body=b'small'),
    '/bad': b'small\r\n\r\n',
    '/hangup': b'',
    # The server is silent after these.
    '/early': fixed(b'413 Content Too Large', b'content-length: 0'),
    '/silent-body': fixed(b'200 OK', b'content-length: 9', body=b'small'),
}
CLOSING = ('/close', '/to-the-end', '/short', '/bad', '/hangup')
SILENT = ('/early', '/silent-body', '/silent')


def serve(directory):
    import trustme
    ca = trustme.CA()
    ca.cert_pem.write_to_path(directory / 'ca.pem')
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert('127.0.0.1').configure_cert(context)

    plain, tls = (socket.create_server(('127.0.0.1', 0), backlog=1024) for _ in range(2))
    names = socket.socket(type=socket.SOCK_DGRAM)
    names.bind(('127.0.0.1', 0))
    in_thread(accept_all, plain, lambda sock: sock)
    in_thread(accept_all, tls, lambda sock: context.wrap_socket(sock, server_side=True))
    in_thread(answer_names, names)
    ports = {name: sock.getsockname()[1]
             for name, sock in (('http', plain), ('https', tls), ('dns', names))}
    print(json.dumps(ports), flush=True)
    sys.stdin.read()


def in_thread(function, *args):
    threading.Thread(target=function, args=args, daemon=True).start()


def accept_all(listener, wrap):
    while True:
        in_thread(serve_connection, listener.accept()[0], wrap)


def serve_connection(sock, wrap):
    with contextlib.suppress(OSError), sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with wrap(sock) as wrapped, wrapped.makefile('rb') as file:
            while serve_exchange(wrapped, file):
                pass


def serve_exchange(sock, file):
    """Answer one request. Returns whether the connection goes on."""
    head = b''.join(iter(file.readline, b'\r\n')).decode() if file.peek(1) else ''
    if not head:
        return False
    path, _, size = head.split(' ')[1].partition('?')
    if path in SILENT:
        sock.sendall(RESPONSES.get(path, b''))
        while file.read(65536):
            pass
        return False
    if 'expect: 100-continue' in head:
        sock.sendall(b'HTTP/1.1 100 Continue\r\n\r\n')
    _, _, length = head.partition('content-length: ')
    discard(file, int(length.split('\r\n')[0] or 0))

    if path == '/trickle':
        for byte in b'HTTP/1.1 200 OK\r\nx-long: ' + b'-' * 1000:
            sock.sendall(bytes((byte,)))
            time.sleep(TIMEOUT / 5)
    elif path == '/bulk':
        sock.sendall(b'HTTP/1.1 200 OK\r\ncontent-length: %b\r\n\r\n' % size.encode())
        for _ in range(int(size) // len(CHUNK)):
            sock.sendall(CHUNK)
    elif path == '/bulk-chunked':
        sock.sendall(b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n')
        for _ in range(int(size) // len(CHUNK)):
            sock.sendall(b'%x\r\n%b\r\n' % (len(CHUNK), CHUNK))
        sock.sendall(b'0\r\n\r\n')
    else:
        sock.sendall(RESPONSES[path])
    return path not in CLOSING


def discard(file, length):
    buffer = memoryview(bytearray(262144))
    while length:
        got = file.readinto(buffer[:length])
        if not got:
            raise ConnectionResetError
        length -= got


def answer_names(sock):
    """A nameserver that knows `name.test`, and has only an A record for it."""
    while True:
        query, address = sock.recvfrom(512)
        is_known = query[12:].lower().startswith(b'\4name\4test\0')
        is_answer = is_known and query[-4:-2] == b'\0\1'
        answer = b'\xc0\x0c' + struct.pack('!HHLH', 1, 1, 60, 4) + bytes((127, 0, 0, 1))
        flags = 0x8180 if is_known else 0x8183
        sock.sendto(query[:2] + struct.pack('!HHHHH', flags, 1, is_answer, 0, 0)
                    + query[12:] + answer * is_answer, address)


class Servers:
    """The addresses of the servers, and of sockets in this process that never answer."""

    def __init__(self, stack):
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        process = stack.enter_context(subprocess.Popen(
            (sys.executable, __file__, '--serve', directory),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        ports = json.loads(process.stdout.readline())
        self.ca = directory / 'ca.pem'
        self.http = f'http://127.0.0.1:{ports["http"]}'
        self.https = f'https://127.0.0.1:{ports["https"]}'
        self.named = f'http://name.test:{ports["http"]}'
        self.nameserver = '127.0.0.1', ports['dns']

        # The kernel makes connections to this socket, but nobody accepts them.
        silent = stack.enter_context(socket.create_server(('127.0.0.1', 0), backlog=1024))
        self.silent = f'127.0.0.1:{silent.getsockname()[1]}'
        silent_dns = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        silent_dns.bind(('127.0.0.1', 0))
        self.silent_nameserver = silent_dns.getsockname()

        # Connections to this one are not even made, because its queue is full.
        full = stack.enter_context(socket.create_server(('127.0.0.1', 0), backlog=0))
        self.full = f'http://127.0.0.1:{full.getsockname()[1]}'
        with contextlib.suppress(TimeoutError):
            while True:
                stack.enter_context(socket.create_connection(full.getsockname(), timeout=0.2))

        # This one is bound but does not listen. So connections are refused, and no other process
        # gets the port.
        refused = stack.enter_context(socket.socket())
        refused.bind(('127.0.0.1', 0))
        self.refused = f'http://127.0.0.1:{refused.getsockname()[1]}'

    def pool(self, nameservers=(), **options):
        from aiodnsresolver import Resolver
        from lowhaio import Pool

        async def get_nameservers(_, __):
            for seconds, address in nameservers or ((5, self.nameserver),):
                yield seconds, address

        return Pool(
            get_ssl_context=lambda: ssl.create_default_context(cafile=self.ca),
            get_dns_resolver=lambda **kwargs: Resolver(get_nameservers=get_nameservers, **kwargs),
            **options)


# Requests, and what is expected of each
# --------------------------------------

async def fetch(request, url, method=b'GET', headers=(), size=0):
    """Make a request with a body of `size` bytes, and return the code and the content."""
    from lowhaio import buffered

    async def body():
        for start in range(0, size, len(CHUNK)):
            yield CHUNK[:size - start]

    if size:
        headers += ((b'content-length', b'%d' % size),)
    code, _, received = await request(method, url, headers=headers, body=body)
    return code, await buffered(received)


async def fetch_and_abandon(request, url, is_closed):
    """Make a request, and return its code and the first bytes of a body that is not read on.

    The body is closed or dropped.
    """
    code, _, body = await request(b'GET', url)
    async for chunk in body:
        if is_closed:
            await body.aclose()
        return code, chunk[:5]
    raise AssertionError('the body has no bytes')


async def outcome_of(coroutine):
    """What a coroutine returned or raised."""
    try:
        return await coroutine
    except (Exception, asyncio.CancelledError) as error:
        return error


def is_expected(outcome, expected):
    """Whether an outcome is one of those expected, which are values and names of errors."""
    if isinstance(outcome, BaseException):
        outcome = type(outcome).__name__
    return outcome in expected


def short(outcome):
    text = repr(outcome)
    return text if len(text) < 200 else f'{text[:200]}…'


SMALL = (b'200', b'small')
CREATED = (b'201', b'')


# The promise that there is no task, thread or executor
# -----------------------------------------------------

class Counts:
    """Counts what is made on the loop.

    A task that does not come from the loop's factory is noticed, too, because each call of a
    function looks at the number of tasks.
    """

    def __init__(self, loop):
        self.loop = loop
        self.tasks = self.threads = self.executors = 0
        self.most_tasks = 1

    def make_task(self, loop, coroutine, **kwargs):
        self.tasks += 1
        return asyncio.Task(coroutine, loop=loop, **kwargs)

    def run_in_executor(self, *args):
        self.executors += 1
        return type(self.loop).run_in_executor(self.loop, *args)

    def on_event(self, _frame, event, _arg):
        if event == 'call':
            self.most_tasks = max(self.most_tasks, len(asyncio.all_tasks(self.loop)))

    def on_event_in_thread(self, *_):
        self.threads += 1
        sys.setprofile(None)

    @contextlib.contextmanager
    def counting(self):
        self.loop.set_task_factory(self.make_task)
        self.loop.run_in_executor = self.run_in_executor
        threading.setprofile(self.on_event_in_thread)
        sys.setprofile(self.on_event)
        before = threads_of_process()
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
            self.threads = max(self.threads, threads_of_process() - before)
            self.loop.set_task_factory(None)
            del self.loop.run_in_executor


def threads_of_process():
    try:
        return len(os.listdir('/proc/self/task'))
    except FileNotFoundError:
        return threading.active_count()


async def check_tasks(servers):
    request, close = servers.pool(socket_timeout=TIMEOUT)
    http, https = servers.http, servers.https
    cases = {
        'plain': (fetch(request, http + '/small'), SMALL),
        'plain, reused': (fetch(request, http + '/small'), SMALL),
        'TLS': (fetch(request, https + '/small'), SMALL),
        'TLS, reused': (fetch(request, https + '/small'), SMALL),
        'HEAD': (fetch(request, http + '/head', b'HEAD'), (b'200', b'')),
        '204': (fetch(request, http + '/empty'), (b'204', b'')),
        'chunked': (fetch(request, http + '/chunked'), SMALL),
        'to the end': (fetch(request, http + '/to-the-end'), SMALL),
        'closing': (fetch(request, http + '/close'), SMALL),
        'large': (fetch(request, f'{http}/bulk?{2 ** 20}'), (b'200', bytes(2 ** 20))),
        'large, TLS': (fetch(request, f'{https}/bulk?{2 ** 20}'), (b'200', bytes(2 ** 20))),
        'upload': (fetch(request, http + '/upload', b'PUT', size=10 ** 7), CREATED),
        'upload, TLS': (fetch(request, https + '/upload', b'PUT', size=10 ** 7), CREATED),
        'upload, expect': (fetch(request, http + '/upload', b'PUT', size=10 ** 5,
                                 headers=((b'expect', b'100-continue'),)), CREATED),
        'early response': (fetch(request, http + '/early', b'PUT', size=10 ** 8), (b'413', b'')),
        'plain, after that': (fetch(request, http + '/small'), SMALL),
        'name': (fetch(request, servers.named + '/small'), SMALL),
        'name, reused': (fetch(request, servers.named + '/small'), SMALL),
        'name, unknown': (fetch(request, 'http://other.test'), 'HttpDnsError'),
        'refused': (fetch(request, servers.refused), 'HttpConnectionError'),
        'no TLS there': (fetch(request, http.replace('http', 'https')), 'HttpTlsError'),
        'bad response': (fetch(request, http + '/bad'), 'HttpDataError'),
        'no response': (fetch(request, http + '/hangup'), 'HttpConnectionClosedError'),
        'short body': (fetch(request, http + '/short'), 'HttpConnectionClosedError'),
        'bad URL': (fetch(request, 'ftp://127.0.0.1'), 'HttpConnectionError'),
        'silent': (fetch(request, http + '/silent'), 'HttpDataError'),
        'silent, connect': (fetch(request, servers.full), 'HttpConnectionError'),
        'silent, TLS': (fetch(request, f'https://{servers.silent}'), 'HttpConnectionError',
                        'HttpTlsError'),
        'abandoned': (fetch_and_abandon(request, f'{http}/bulk?{2 ** 24}', False),
                      (b'200', bytes(5))),
        'abandoned, closed': (fetch_and_abandon(request, f'{http}/bulk?{2 ** 24}', True),
                              (b'200', bytes(5))),
    }
    counts = Counts(asyncio.get_running_loop())
    with counts.counting():
        outcomes = {name: await outcome_of(coroutine) for name, (coroutine, *_) in cases.items()}
        await close()

    for name, (_, *expected) in cases.items():
        if not is_expected(outcomes[name], expected):
            yield False, f'{name}: {short(outcomes[name])} and not {short(expected)}'
    made = counts.tasks + counts.threads + counts.executors + counts.most_tasks - 1
    yield made == 0, (f'{len(cases)} kinds of request: {counts.tasks} tasks, {counts.threads} '
                      f'threads, {counts.executors} uses of an executor, never more than '
                      f'{counts.most_tasks} task at once')


# The promise that timeouts leave no cancellation
# -----------------------------------------------

async def check_timeouts(servers):
    from lowhaio import HttpError
    request, close = servers.pool(socket_timeout=TIMEOUT)
    own, own_close = servers.pool(socket_timeout=10, nameservers=(
        (TIMEOUT / 3, servers.silent_nameserver), (5, servers.nameserver)))
    never, never_close = servers.pool(socket_timeout=10, nameservers=(
        (TIMEOUT / 3, servers.silent_nameserver),) * 3)
    slow, slow_close = servers.pool(socket_timeout=TIMEOUT, nameservers=(
        (10, servers.silent_nameserver),))

    async def in_full_pool():
        busy, busy_close = servers.pool(max_connections=1, pool_timeout=TIMEOUT)
        _, _, held = await busy(b'GET', f'{servers.http}/bulk?{2 ** 24}')
        try:
            await fetch(busy, servers.http + '/small')
        finally:
            await held.aclose()
            await busy_close()

    async def in_timeout_of_caller():
        async with asyncio.timeout(TIMEOUT):
            await fetch(own, servers.http + '/silent')

    cases = {
        'connect': (fetch(request, servers.full), 'HttpConnectionError'),
        'TLS handshake': (fetch(request, f'https://{servers.silent}'), 'HttpConnectionError',
                          'HttpTlsError'),
        'silent head': (fetch(request, servers.http + '/silent'), 'HttpDataError'),
        'silent head, TLS': (fetch(request, servers.https + '/silent'), 'HttpDataError'),
        'trickled head': (fetch(request, servers.http + '/trickle'), 'HttpDataError'),
        'silent body': (fetch(request, servers.http + '/silent-body'), 'HttpDataError'),
        'blocked upload': (fetch(request, f'http://{servers.silent}', b'PUT', size=2 ** 26),
                           'HttpDataError'),
        'DNS, second nameserver answers': (fetch(own, servers.named + '/small'), SMALL),
        'DNS, no nameserver answers': (fetch(never, servers.named), 'HttpDnsError'),
        'DNS, socket_timeout first': (fetch(slow, servers.named), 'HttpDnsError',
                                      'HttpConnectionError'),
        'pool': (in_full_pool(), 'HttpConnectionError'),
        "the caller's asyncio.timeout": (in_timeout_of_caller(), 'TimeoutError'),
    }
    for name, (coroutine, *expected) in cases.items():
        start = time.monotonic()
        outcome = await outcome_of(coroutine)
        seconds = time.monotonic() - start
        cancelling = asyncio.current_task().cancelling()
        await asyncio.sleep(0)  # this raises a cancellation that has not been delivered yet
        is_in_time = TIMEOUT / 3 <= seconds + 0.01 < TIMEOUT * 3
        is_right = is_expected(outcome, expected) and (
            not isinstance(outcome, HttpError) or isinstance(outcome.__cause__, TimeoutError))
        yield cancelling == 0 and is_in_time and is_right, (
            f'{name}: cancelling() is {cancelling}, after {seconds * 1000:.0f} ms: '
            f'{short(outcome)}')

    for close_pool in (close, own_close, never_close, slow_close):
        await close_pool()


# The promise about memory
# ------------------------

TRANSFERS = {
    'download': (f'/bulk?{SIZE}', b'GET', 0),
    'TLS download': (f'/bulk?{SIZE}', b'GET', 0),
    'chunked download': (f'/bulk-chunked?{SIZE}', b'GET', 0),
    'upload': ('/upload', b'PUT', SIZE),
    'TLS upload': ('/upload', b'PUT', SIZE),
}


async def check_memory(servers):
    loop_name = type(asyncio.get_running_loop()).__module__.partition('.')[0]
    for name in TRANSFERS:
        origin = servers.https if name.startswith('TLS') else servers.http
        output = subprocess.run(  # noqa: ASYNC221
            (sys.executable, __file__, '--transfer', name, '--url', origin, '--ca', servers.ca,
             '--loop', loop_name), check=True, stdout=subprocess.PIPE).stdout
        result = json.loads(output)
        peak, before, maxrss = (result[key] / 2 ** 20 for key in ('peak', 'before', 'maxrss'))
        yield peak < LIMIT_MIB and result['bytes'] == SIZE, (
            f'{name} of {result["bytes"] / 2 ** 30:g} GiB: peak {peak:.1f} MiB (ru_maxrss '
            f'{maxrss:.1f}), of which {before:.1f} before the request')


def peak_memory():
    """The most memory that this process has had, in bytes.

    On Linux, ru_maxrss would begin with the peak of the process that started this one.
    """
    with contextlib.suppress(FileNotFoundError):
        for line in Path('/proc/self/status').read_text().splitlines():
            if line.startswith('VmHWM:'):
                return int(line.split()[1]) * 1024
    return maxrss()


def maxrss():
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


async def transfer(args):
    """Make one request in a process of its own, and print its numbers as JSON."""
    from lowhaio import Pool
    path, method, size = TRANSFERS[args.transfer]
    count = 0

    async def chunks():
        nonlocal count
        for _ in range(size // len(CHUNK)):
            count += len(CHUNK)
            yield CHUNK

    context = ssl.create_default_context(cafile=args.ca)
    request, close = Pool(get_ssl_context=lambda: context)
    headers = ((b'content-length', b'%d' % size),) if size else ()
    before = peak_memory()
    _, _, body = await request(method, args.url + path, headers=headers, body=chunks)
    async for chunk in body:
        count += len(chunk)
    print(json.dumps({
        'before': before, 'peak': peak_memory(), 'maxrss': maxrss(), 'bytes': count}))
    await close()


# The promise that nothing is left behind
# ---------------------------------------

class Watched:
    """The readers, writers and timers of a loop, known from the calls that make and end them."""

    def __init__(self, loop):
        self.readers, self.writers, self.timers, self.complaints = set(), set(), {}, []
        for kind, fds in (('reader', self.readers), ('writer', self.writers)):
            self.watch(loop, f'add_{kind}', fds.add)
            self.watch(loop, f'remove_{kind}', fds.discard)
        self.watch_timers(loop, 'call_at')
        self.watch_timers(loop, 'call_later')
        loop.set_exception_handler(lambda _, context: self.complaints.append(context))
        sys.unraisablehook = self.complaints.append

    @staticmethod
    def watch(loop, name, note):
        function = getattr(loop, name)

        def watched(fd, *args):
            note(fd if isinstance(fd, int) else fd.fileno())
            return function(fd, *args)

        setattr(loop, name, watched)

    def watch_timers(self, loop, name):
        function = getattr(loop, name)

        def watched(when, callback, *args, **kwargs):
            def run():
                del self.timers[key]
                callback(*args)

            key = object()
            self.timers[key] = handle = function(when, run, **kwargs)
            return handle

        setattr(loop, name, watched)

    def pending_timers(self):
        # A timer is there twice if it was made by a function that calls the other one.
        return {id(handle) for handle in self.timers.values() if not handle.cancelled()}


def descriptors():
    return len(os.listdir('/dev/fd'))


async def fetch_and_cancel(request, url, ticks):
    """Make a request that is cancelled after this number of turns of the loop."""
    task = asyncio.create_task(fetch(request, url))
    for _ in range(ticks):
        await asyncio.sleep(0)
    task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        return 'cancelled'


async def one_of_many(request, servers, number):
    """Make one request, and return its kind."""
    origin = (servers.http, servers.http, servers.https, servers.named)[number % 4]
    kind = number // 4 % 25
    outcome, expected = None, (SMALL,)
    if number % 1000 == 0:
        name = 'silent'
        outcome = await outcome_of(fetch(request, origin + '/silent'))
        expected = ('HttpDataError',)
    elif kind < 10:
        name = 'plain'
        outcome = await outcome_of(fetch(request, origin + '/small'))
    elif kind < 12:
        name = 'chunked'
        outcome = await outcome_of(fetch(request, origin + '/chunked'))
    elif kind < 14:
        name = 'upload'
        outcome = await outcome_of(fetch(request, origin + '/upload', b'PUT', size=200_000))
        expected = (CREATED,)
    elif kind < 15:
        name = 'closing'
        outcome = await outcome_of(fetch(request, origin + '/close'))
    elif kind < 18:
        name = 'error'
        url, *expected = (
            (servers.refused, 'HttpConnectionError'),
            (origin + '/bad', 'HttpDataError'),
            (origin + '/hangup', 'HttpConnectionClosedError'),
            (origin + '/short', 'HttpConnectionClosedError'),
        )[number // 100 % 4]
        outcome = await outcome_of(fetch(request, url))
    elif kind < 21:
        name = 'abandoned'
        outcome = await outcome_of(fetch_and_abandon(
            request, f'{origin}/bulk?{2 ** 20}', is_closed=kind < 19))
        expected = ((b'200', bytes(5)),)
    else:
        name = 'cancelled'
        path = ('/small', '/silent', '/close', f'/bulk?{2 ** 20}')[number // 100 % 4]
        outcome = await outcome_of(fetch_and_cancel(request, origin + path, number // 100 % 13))
        expected = ('cancelled', SMALL, (b'200', bytes(2 ** 20)))
    if not is_expected(outcome, expected):
        raise AssertionError(f'{number}, {name}: {short(outcome)} and not {short(expected)}')
    return name


async def check_descriptors(servers, requests=REQUESTS, **options):
    from lowhaio import buffered
    watched = Watched(asyncio.get_running_loop())
    before = descriptors()
    request, close = servers.pool(socket_timeout=2, **options)
    kinds, most = {}, before

    async def worker(numbers):
        nonlocal most
        for number in numbers:
            kind = await one_of_many(request, servers, number)
            kinds[kind] = kinds.get(kind, 0) + 1
            most = max(most, descriptors())

    numbers = reversed(range(requests))
    await asyncio.gather(*(worker(numbers) for _ in range(20)))
    _, _, held = await request(b'GET', f'{servers.http}/bulk?{2 ** 24}')
    open_before_close = descriptors()
    await close()
    open_after_close = descriptors()
    length = len(await buffered(held))
    gc.collect()
    for _ in range(3):
        await asyncio.sleep(0)

    timers = len(watched.pending_timers())
    after = descriptors()
    text = ', '.join(f'{number} {kind}' for kind, number in sorted(kinds.items()))
    yield True, f'{sum(kinds.values())} requests: {text}'
    yield after == before and open_after_close == before + 1, (
        f'descriptors: {before} before, at most {most}, {open_before_close} at the end, '
        f'{open_after_close} once the pool is closed with one response unread, {after} after it')
    yield length == 2 ** 24, f'bytes read of that response: {length}'
    yield not (watched.readers or watched.writers or timers), (
        f'left on the loop: {len(watched.readers)} readers, {len(watched.writers)} writers, '
        f'{timers} timers')
    first = f': {watched.complaints[0]}' if watched.complaints else ''
    yield not watched.complaints, (
        f'complaints of the loop and of the interpreter: {len(watched.complaints)}{first}')


# Running
# -------

CHECKS = {
    'tasks': check_tasks,
    'timeouts': check_timeouts,
    'memory': check_memory,
    'descriptors': check_descriptors,
    'limits': functools.partial(check_descriptors, requests=3000, max_connections=10),
}


async def run_check(loop_name, name, servers):
    """Check one promise. Returns whether it was kept."""
    start, are_kept = time.monotonic(), True
    try:
        async for is_kept, text in CHECKS[name](servers):
            print(f'{"ok" if is_kept else "FALSE":6}{loop_name:8} {text}', flush=True)
            are_kept = are_kept and is_kept
    except Exception:
        traceback.print_exc()
        are_kept = False
    print(f'{"kept" if are_kept else "BROKEN":6}{loop_name:8} {name} '
          f'({time.monotonic() - start:.0f} s)\n', flush=True)
    return are_kept


def loop_factory_of(name):
    if name == 'asyncio':
        return asyncio.new_event_loop
    import uvloop
    return uvloop.new_event_loop


def main():
    names = lambda text: text.split(',')  # noqa: E731
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', type=names, default=list(CHECKS), help='of the names above')
    parser.add_argument('--loop', type=names, default=['asyncio', 'uvloop'])
    for option in ('--serve', '--transfer', '--url', '--ca'):  # for the other processes
        parser.add_argument(option, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(Path(args.serve))
    if args.transfer:
        with asyncio.Runner(loop_factory=loop_factory_of(args.loop[0])) as runner:
            return runner.run(transfer(args))

    logging.disable()
    are_kept = True
    with contextlib.ExitStack() as stack:
        servers = Servers(stack)
        for loop_name in args.loop:
            if importlib.util.find_spec(loop_name) is None:
                print(f'{loop_name} cannot be imported: left out')
                continue
            for name in args.only:
                with asyncio.Runner(loop_factory=loop_factory_of(loop_name)) as runner:
                    are_kept = runner.run(run_check(loop_name, name, servers)) and are_kept
    return 0 if are_kept else 1


if __name__ == '__main__':
    sys.exit(main())
