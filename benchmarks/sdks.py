"""Measures the SDKs' HTTP client on lowhaio, side by side with its other transports.

    python benchmarks/sdks.py
    python benchmarks/sdks.py --quick
    python benchmarks/sdks.py --rounds 9 --loop asyncio --only get,get-32
    python benchmarks/sdks.py --only service --svg service.svg
    python benchmarks/sdks.py --instructions --only get,get-32,completion-32

Each column is httpx2 (or httpx, in the rows of its name) with another transport:

stock     its own, which is httpcore2 with h11
aiohttp   openai's `DefaultAioHttpClient`; for httpx that of httpx-aiohttp
canned    answers without any network: what httpx2 and the SDK take by themselves, the floor
lowhaio   `LowhaioTransport` of lowhaio-httpx2, or of lowhaio-httpx

The server is a process of its own, on one core, and the clients run on another. Each measurement
is a fresh process, which warms up, and then takes the CPU time of the process, with all threads,
around the requests. The transports take turns, round by round, and medians are shown. Only numbers
of one run are comparable. `--help` lists what is measured.

"Paced" events come every 10 ms, one in each of 32 responses at once, so that each is a read of its
own, as tokens of a model are. The others come in one write for a whole response.

With --instructions it counts those of user space, by valgrind, for each request or event. They are
nearly the same on a machine that has much else to do, but say nothing of the system and of caches.

It exits with 1 if lowhaio misses an aim that the canned transport reaches. A process that fails is
shown with the reason. The service is examples/model_service.py, with 32 who ask it.
"""
import argparse
import asyncio
import contextlib
import gc
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from measure import Failed, memory, runner
from server import pin

HERE = Path(__file__).resolve()
ROOT = HERE.parents[1]
LOOPS = ('asyncio', 'uvloop')
TRANSPORTS = ('stock', 'aiohttp', 'canned', 'lowhaio')
MIB = 2 ** 20
PACE = 0.01  # seconds


# What is answered
# ----------------

SMALL = bytes(100)
# As many fields, and of such lengths, as the API of a model sends.
FIELDS = (
    b'date: Sun, 01 Nov 2026 12:00:00 GMT\r\nserver: a-server\r\nvia: 1.1 proxy\r\n'
    b'access-control-expose-headers: X-Request-ID\r\nstrict-transport-security: max-age=31536000; '
    b'includeSubDomains; preload\r\nx-content-type-options: nosniff\r\nvary: accept-encoding\r\n'
    b'x-processing-ms: 412\r\nx-version: 2020-10-01\r\nx-organization: an-organization\r\n'
    b'x-ratelimit-limit-requests: 10000\r\nx-ratelimit-limit-tokens: 200000\r\n'
    b'x-ratelimit-remaining-requests: 9999\r\nx-ratelimit-remaining-tokens: 199978\r\n'
    b'x-ratelimit-reset-requests: 8.64s\r\nx-ratelimit-reset-tokens: 6ms\r\n'
    b'x-request-id: req_0123456789abcdef0123456789abcdef\r\ncache-control: no-store\r\n')
SMALL_FIELDS = (
    b'server: nginx\r\ndate: Sun, 01 Nov 2026 12:00:00 GMT\r\nlast-modified: Sun, 01 Nov 2026 '
    b'11:00:00 GMT\r\nconnection: keep-alive\r\netag: "5f3b1a2c-64"\r\naccept-ranges: bytes\r\n')
COMPLETION = json.dumps({
    'id': 'chatcmpl-0123456789', 'object': 'chat.completion', 'created': 1793534400,
    'model': 'a-model', 'system_fingerprint': 'fp_0123456789', 'service_tier': 'default',
    'choices': [{'index': 0, 'finish_reason': 'stop', 'logprobs': None, 'message': {
        'role': 'assistant', 'content': 'A sentence of some words. ' * 10, 'refusal': None,
        'annotations': []}}],
    'usage': {'prompt_tokens': 20, 'completion_tokens': 60, 'total_tokens': 80,
              'prompt_tokens_details': {'cached_tokens': 0, 'audio_tokens': 0},
              'completion_tokens_details': {'reasoning_tokens': 0, 'audio_tokens': 0}},
}).encode()
EVENTS = 200  # of a response
EVENT = b'data: %b\n\n' % json.dumps({
    'id': 'chatcmpl-0123456789', 'object': 'chat.completion.chunk', 'created': 1793534400,
    'model': 'a-model', 'system_fingerprint': 'fp_0123456789', 'service_tier': 'default',
    'choices': [{'index': 0, 'delta': {'content': ' word'}, 'logprobs': None,
                 'finish_reason': None}],
}).encode()
DONE = b'data: [DONE]\n\n'
MESSAGES = [{'role': 'system', 'content': 'Answer with one sentence.'},
            {'role': 'user', 'content': 'What is the weight of a litre of water?' * 4}]


def whole(fields, kind, content):
    return (b'HTTP/1.1 200 OK\r\n%bcontent-type: %b\r\ncontent-length: %d\r\n\r\n'
            % (fields, kind, len(content)) + content)


def coded(data):
    return b'%x\r\n%b\r\n' % (len(data), data)


SMALL_RESPONSE = whole(SMALL_FIELDS, b'application/octet-stream', SMALL)
COMPLETION_RESPONSE = whole(FIELDS, b'application/json', COMPLETION)
EVENTS_HEAD = (b'HTTP/1.1 200 OK\r\n%bcontent-type: text/event-stream\r\n'
               b'transfer-encoding: chunked\r\n\r\n' % FIELDS)
LAST = coded(DONE) + b'0\r\n\r\n'
BURST_RESPONSE = EVENTS_HEAD + coded(EVENT) * EVENTS + LAST


# The server, which runs in a process of its own until its stdin closes
# ---------------------------------------------------------------------

class Answers(asyncio.Protocol):
    """Answers a request by the first part of its path."""

    accepted = 0
    paced = set()

    def connection_made(self, transport):
        self.transport = transport
        self.data = b''
        self.can_write = asyncio.Event()
        self.can_write.set()
        Answers.accepted += 1

    def connection_lost(self, _):
        self.paced.discard(self)
        self.can_write.set()

    def pause_writing(self):
        self.can_write.clear()

    def resume_writing(self):
        self.can_write.set()

    def data_received(self, data):
        self.data += data
        head, end, rest = self.data.partition(b'\r\n\r\n')
        length = length_of(head)
        if end and len(rest) >= length:
            self.data = rest[length:]
            self.answer(head.split(b' ')[1].split(b'/')[1])

    def answer(self, path):
        if path == b'small':
            self.transport.write(SMALL_RESPONSE)
        elif path == b'completion':
            self.transport.write(COMPLETION_RESPONSE)
        elif path == b'burst':
            self.transport.write(BURST_RESPONSE)
        elif path == b'open':
            self.transport.write(EVENTS_HEAD + coded(EVENT))
        elif path == b'paced':
            self.transport.write(EVENTS_HEAD)
            self.left = EVENTS
            self.paced.add(self)
        elif path == b'accepted':
            self.transport.write(whole(b'', b'text/plain', b'%d' % Answers.accepted))
        else:
            self.sending = asyncio.create_task(self.send_bulk(int(path.removeprefix(b'bulk-'))))

    async def send_bulk(self, size):
        self.transport.write(b'HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n' % size)
        chunk = bytes(262144)
        for _ in range(size // len(chunk)):
            await self.can_write.wait()
            self.transport.write(chunk)

    def go_on(self):
        self.left -= 1
        if self.left >= 0:
            self.transport.write(coded(EVENT))
        else:
            self.paced.discard(self)
            self.transport.write(LAST)


def length_of(head):
    _, _, rest = head.lower().partition(b'\r\ncontent-length:')
    return int(rest.partition(b'\r\n')[0] or 0)


async def serve():
    loop = asyncio.get_running_loop()
    raise_limit_of_files()
    server = await loop.create_server(Answers, '127.0.0.1', 0, backlog=4096)
    port = server.sockets[0].getsockname()[1]
    print(f'http://127.0.0.1:{port}', flush=True)
    is_over = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), is_over.set)
    while not is_over.is_set():
        await asyncio.sleep(PACE)
        for answers in tuple(Answers.paced):
            answers.go_on()


def raise_limit_of_files():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.contextmanager
def process(*args):
    """Yield a process of this script, and the first line that it prints."""
    with subprocess.Popen((sys.executable, HERE, *args), stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True, env=environment()) as started:
        yield started, started.stdout.readline().strip()
        started.stdin.close()


def environment():
    """Without what the clients would ask: proxies, and the key of an API. Modules are compiled
    once: to compile lowhaio takes memory too."""
    return {name: value for name, value in os.environ.items()
            if not name.lower().endswith('_proxy') and not name.startswith('OPENAI_')
            and name != 'PYTHONDONTWRITEBYTECODE'}


# The transports
# --------------

def make_client(package, name, path='small'):
    """A client of httpx2 or httpx with that transport, and otherwise the same options."""
    httpx = importlib.import_module(package)
    limits = httpx.Limits(max_connections=2000, max_keepalive_connections=2000)
    options = {'limits': limits, 'timeout': httpx.Timeout(600, connect=5),
               'follow_redirects': True}
    if name == 'stock':
        return httpx.AsyncClient(**options)
    if name == 'aiohttp':
        if package == 'httpx2':
            return importlib.import_module('openai').DefaultAioHttpClient(**options)
        return importlib.import_module('httpx_aiohttp').HttpxAiohttpClient(**options)
    return httpx.AsyncClient(transport=make_transport(httpx, name, limits, path), **options)


def make_transport(httpx, name, limits, path):
    if name == 'canned':
        return canned(httpx, path)
    import_from_root()
    return importlib.import_module(f'lowhaio_{httpx.__name__}').LowhaioTransport(limits=limits)


def import_from_root(*directories):
    """Let lowhaio, both transports, and what is in these directories be imported."""
    sys.path[:0] = map(str, (
        ROOT, *(ROOT / name for name in ('layers/httpx2', 'layers/httpx', *directories))))


def canned(httpx, path):
    """A transport that has the responses of the server in memory."""
    response, content = {
        'small': (SMALL_RESPONSE, (SMALL,)),
        'completion': (COMPLETION_RESPONSE, (COMPLETION,)),
        'paced': (BURST_RESPONSE, (*(EVENT,) * EVENTS, DONE)),
        'burst': (BURST_RESPONSE, (EVENT * EVENTS + DONE,)),
        'open': (BURST_RESPONSE, (EVENT,)),
    }.get(path, (SMALL_RESPONSE, (bytes(65536),) * (int(path.partition('-')[2] or 0) // 65536)))
    head = response.partition(b'\r\n\r\n')[0].split(b'\r\n')[1:]
    fields = [tuple(line.split(b': ', 1)) for line in head]

    class Stream(httpx.AsyncByteStream):
        async def __aiter__(self):
            for data in content:
                yield data

    class Canned(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request):
            return httpx.Response(200, headers=fields, stream=Stream(), extensions={
                'http_version': b'HTTP/1.1', 'reason_phrase': b'OK'})

    return Canned()


# What is measured. Each function takes a client, the origin of the server and how often, and
# returns how much there was to count.
# ---------------------------------------------------------------------------------------------

async def get(client, url, number):
    for _ in range(number):
        response = await client.get(url)
        check(len(response.content) == len(SMALL), response)
    return number


async def complete(client, url, number):
    sdk = client.sdk(url)
    for _ in range(number):
        completion = await sdk.chat.completions.create(model='a-model', messages=MESSAGES)
        check(completion.usage.total_tokens == 80, completion)
    return number


async def stream_events(client, url, number):
    sdk, count = client.sdk(url), 0
    for _ in range(number):
        async for event in await sdk.chat.completions.create(
                model='a-model', messages=MESSAGES, stream=True):
            count += event.choices[0].delta.content == ' word'
    check(count == number * EVENTS, f'{count} events')
    return count


async def stream_lines(client, url, number):
    count = 0
    for _ in range(number):
        async with client.stream('GET', url) as response:
            async for line in response.aiter_lines():
                count += line.startswith('data: {')
    check(count == number * EVENTS, f'{count} lines')
    return count


async def stream_raw(client, url, number):
    size, count = int(url.rpartition('-')[2]), 0
    for _ in range(number):
        async with client.stream('GET', url) as response:
            async for data in response.aiter_raw():
                count += len(data)
    check(count == number * size, f'{count} bytes')
    return count


def check(is_right, found):
    if not is_right:
        raise Failed(f'this was not expected: {found}')


@dataclass(frozen=True)
class Workload:
    what: str
    run: Callable
    path: str
    # The requests of a measurement, and how many of them are under way at once.
    requests: int
    concurrency: int = 1
    package: str = 'httpx2'
    # What is counted for each second of CPU, and the factor to it. Otherwise it is the CPU of a
    # request that is shown, in µs.
    unit: str = 'µs'
    factor: float = 1e6
    # By transport: what lowhaio may cost at most, or has to give at least, to that transport.
    aims: dict = field(default_factory=dict)

    def figure(self, cpu, count):
        return self.factor * (cpu / count if self.unit == 'µs' else count / cpu)

    def keeps(self, ratio, aim):
        return ratio <= aim if self.unit == 'µs' else ratio >= aim


EVENTS_A_SECOND = {'unit': 'events/s', 'factor': 1, 'aims': {'stock': 1.25}}
SIZE = 256 * MIB
WORKLOADS = {
    'get': Workload('GET of 100 bytes, one at a time', get, 'small', 1_500,
                    aims={'stock': 0.3, 'aiohttp': 0.6}),
    'get-32': Workload('GET of 100 bytes, 32 at once', get, 'small', 3_200, 32,
                       aims={'stock': 0.24, 'aiohttp': 0.6}),
    'httpx-get': Workload('GET by classic httpx, one at a time', get, 'small', 1_000,
                          package='httpx'),
    'httpx-get-32': Workload('GET by classic httpx, 32 at once', get, 'small', 1_600, 32,
                             package='httpx'),
    'completion': Workload('a chat completion by openai, one at a time', complete, 'completion',
                           500),
    'completion-32': Workload('a chat completion by openai, 32 at once', complete, 'completion',
                              1_600, 32, aims={'stock': 0.6, 'aiohttp': 0.85}),
    'events': Workload('paced events by openai, 32 at once', stream_events, 'paced', 32,
                       32, **EVENTS_A_SECOND),
    'events-burst': Workload('events of one write by openai', stream_events, 'burst', 25,
                             **EVENTS_A_SECOND),
    'lines': Workload('paced events by aiter_lines, 32 at once', stream_lines, 'paced',
                      32, 32, **EVENTS_A_SECOND),
    'lines-burst': Workload('events of one write by aiter_lines', stream_lines, 'burst', 100,
                            **EVENTS_A_SECOND),
    'raw': Workload('a download by aiter_raw', stream_raw, f'bulk-{SIZE}', 1, unit='MB/s',
                    factor=1e-6, aims={'stock': 1.8}),
}


class Client:
    """A client, and the SDK that stands on it."""

    def __init__(self, client):
        self.get = client.get
        self.stream = client.stream
        self.client = client
        self.sdks = {}

    def sdk(self, url):
        if url not in self.sdks:
            from openai import AsyncOpenAI
            self.sdks[url] = AsyncOpenAI(
                api_key='a-key', base_url=url, http_client=self.client, max_retries=0)
        return self.sdks[url]


async def measure(job):
    workload = WORKLOADS[job['workload']]
    url = f'{job["origin"]}/{workload.path}'
    requests = max(1, job['requests'] // workload.concurrency)

    async def run(number):
        return sum(await asyncio.gather(
            *(workload.run(client, url, number) for _ in range(workload.concurrency))))

    async with make_client(workload.package, job['transport'], workload.path) as made:
        client = Client(made)
        # Paced responses take long, and one for each connection warms up all.
        await run(max(1, requests // 10))
        before = await accepted(job)
        gc.collect()
        start = time.process_time()
        count = await run(requests)
        cpu = time.process_time() - start
        made_connections = await accepted(job) - before - 1
    check(made_connections <= 0 or made_connections <= requests * workload.concurrency / 10,
          f'{made_connections} new connections for {requests * workload.concurrency} requests')
    return {'figure': workload.figure(cpu, count)}


async def accepted(job):
    """How many connections the server has had, this one included."""
    host, _, port = job['origin'].removeprefix('http://').partition(':')
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b'GET /accepted HTTP/1.1\r\n\r\n')
    await reader.readuntil(b'\r\n\r\n')
    count = int(await reader.read(100))
    writer.close()
    return count


# Memory
# ------

async def measure_memory(job):
    """The memory of each of many responses that are open, in KiB."""
    raise_limit_of_files()
    url, number = f'{job["origin"]}/open', job['requests']
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(make_client('httpx2', job['transport'], 'open'))

        async def open_response():
            response = await stack.enter_async_context(client.stream('GET', url))
            lines = response.aiter_lines()
            check((await anext(lines)).startswith('data: {'), response)
            return lines

        opened = [await open_response()]
        gc.collect()
        before = memory('VmRSS')
        opened += [await open_response() for _ in range(number)]
        gc.collect()
        result = {'figure': (memory('VmRSS') - before) / number / 1024,
                  'peak': memory('VmHWM') / MIB}
        print(json.dumps(result), flush=True)
        # Nothing is closed in good order: that is not what is measured.
        os._exit(0)


# A service that asks a model
# ---------------------------

@dataclass(frozen=True)
class Service:
    what: str
    path: str
    is_stream: bool
    # The requests of each of those that ask at the same time.
    requests: int


SERVICES = {
    'completion': Service('a whole answer', 'completion', False, 50),
    'events': Service(f'an answer of {EVENTS} events', 'paced', True, 2),
}
ASKING = 32


async def run_service(job):
    """Serve examples/model_service.py, and print the CPU so far for each line that comes, until
    stdin closes."""
    import_from_root('examples')
    import uvicorn
    from model_service import create_app
    loop = asyncio.get_running_loop()
    app = create_app(f'{job["origin"]}/{job["path"]}', 'a-model', job['transport'])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level='warning', ws='none'))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(time.process_time(), flush=True)
    server.should_exit = True
    await serving


async def ask_service(port, service, number):
    """Make so many requests, one after the other, without any client."""
    data = json.dumps({'question': 'What is a sundial?', 'stream': service.is_stream}).encode()
    reader, writer = await asyncio.open_connection('127.0.0.1', port)
    for _ in range(number):
        writer.write(b'POST /answers HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n'
                     b'content-length: %d\r\n\r\n%b' % (len(data), data))
        head = await reader.readuntil(b'\r\n\r\n')
        check(head.startswith(b'HTTP/1.1 200 '), head)
        if service.is_stream:
            await reader.readuntil(b'\r\n0\r\n\r\n')
        else:
            await reader.readexactly(length_of(head))
    writer.close()


def measure_service(job, service):
    """The CPU of the service for a request, in µs."""
    with process('--service', json.dumps(job)) as (started, port):
        check(port, 'the service did not start')

        def cpu():
            print(file=started.stdin, flush=True)
            return float(started.stdout.readline())

        async def ask(number):
            await asyncio.gather(
                *(ask_service(int(port), service, number) for _ in range(ASKING)))

        asyncio.run(ask(1))
        start = cpu()
        asyncio.run(ask(job['requests']))
        return {'figure': (cpu() - start) / job['requests'] / ASKING * 1e6}


# Rounds, and what is shown
# -------------------------

class Results:
    """The figures by what is measured and by transport. A failure is shown once."""

    def __init__(self):
        self.found = {}
        self.failed = set()

    def add(self, what, transport, function, *args):
        if (what, transport) in self.failed:
            return
        try:
            self.found.setdefault((what, transport), []).append(function(*args))
        except (Failed, subprocess.TimeoutExpired, ValueError) as error:
            self.failed.add((what, transport))
            print(f'{transport}, {what} failed: {error}', flush=True)

    def median(self, what, transport, key='figure'):
        found = self.found.get((what, transport))
        if not found or (what, transport) in self.failed:
            return float('nan')
        return statistics.median(result[key] for result in found)


def measure_in_process(job, timeout):
    ended = subprocess.run((sys.executable, HERE, '--measure', json.dumps(job)), check=False,
                           capture_output=True, text=True, timeout=timeout, env=environment())
    if ended.returncode:
        raise Failed((ended.stderr.strip().splitlines() or ['nothing was said'])[-1])
    return json.loads(ended.stdout)


# Requests of a short and of a long measurement.
COUNTED = 64, 384


def count_instructions(job, concurrency, timeout):
    """The thousands for each request: what a longer measurement has more than a short one."""
    totals, requests = [], []
    for number in COUNTED:
        each = number // concurrency
        # Before they are measured, some warm up.
        requests.append((each + max(1, each // 10)) * concurrency)
        ended = subprocess.run(
            ('valgrind', '--tool=cachegrind', '--cache-sim=no', '--cachegrind-out-file=/dev/null',
             sys.executable, HERE, '--measure',
             json.dumps({**job, 'requests': number})),
            check=False, capture_output=True, text=True, timeout=10 * timeout,
            env={**environment(), 'PYTHONHASHSEED': '0'})
        found = re.search(r'I +refs: +([0-9,]+)', ended.stderr)
        if ended.returncode or found is None:
            raise Failed((ended.stderr.strip().splitlines() or ['nothing was said'])[-1])
        totals.append(int(found[1].replace(',', '')))
    return {'figure': (totals[1] - totals[0]) / (requests[1] - requests[0]) / 1000}


def show(title, cells, width=12):
    print(f'{title:50}' + ''.join(f'{cell:>{width}}' for cell in cells), flush=True)


def show_row(workload, results, name, transports):
    """Print a row. Returns whether all aims are reached."""
    figures = {transport: results.median(name, transport) for transport in TRANSPORTS}
    cells = [f'{figures[transport]:,.0f}' if transport in transports else ''
             for transport in TRANSPORTS]
    kept, notes = True, []
    for peer in TRANSPORTS[:-1]:
        ratio = figures['lowhaio'] / figures[peer]
        cells.append('' if ratio != ratio else f'{ratio:.2f}')
        aim = workload.aims.get(peer)
        if aim is not None and peer in transports and 'lowhaio' in transports:
            least = figures['canned'] / figures[peer]
            verdict = 'kept' if workload.keeps(ratio, aim) else \
                'MISSED' if least != least or workload.keeps(least, aim) else \
                f'out of reach: the canned one has {least:.2f}'
            sign = '≤' if workload.unit == 'µs' else '≥'
            notes.append(f'{peer} {sign} {aim} {verdict}')
            kept &= verdict != 'MISSED'
    show(f'{workload.what}, {workload.unit}', cells)
    if notes:
        print(f'{"":50}   {", ".join(notes)}', flush=True)
    return kept


TITLES = (*TRANSPORTS, *(f'to {peer}' for peer in TRANSPORTS[:-1]))


def run_workloads(args, origin, loop):
    results, kept = Results(), True
    names = [name for name in WORKLOADS if name in args.only]
    if not names:
        return True
    for _ in range(args.rounds):
        for name in names:
            workload = WORKLOADS[name]
            requests = max(workload.concurrency, workload.requests // (10 if args.quick else 1))
            for transport in args.transports:
                job = {'workload': name, 'transport': transport, 'origin': origin, 'loop': loop,
                       'requests': requests}
                results.add(name, transport, measure_in_process, job, args.timeout)
    show(f'\n{loop}', ('', *TITLES)[1:])
    for name in names:
        kept &= show_row(WORKLOADS[name], results, name, args.transports)
    return kept


def run_instructions(args, origin, loop):
    show(f'\n{loop}', ('', *TITLES)[1:])
    for name, workload in WORKLOADS.items():
        if name in args.only:
            results = Results()
            for transport in args.transports:
                job = {'workload': name, 'transport': transport, 'origin': origin, 'loop': loop}
                results.add(name, transport, count_instructions, job, workload.concurrency,
                            args.timeout)
            figures = [results.median(name, transport) for transport in TRANSPORTS]
            show(f'{workload.what}, thousands',
                 (*(f'{figure:,.0f}' for figure in figures),
                  *(f'{figures[-1] / figure:.3f}' for figure in figures[:-1])))


def run_memory(args, origin, loop):
    results = Results()
    for _ in range(args.rounds):
        for transport in args.transports:
            job = {'workload': 'memory', 'transport': transport, 'origin': origin, 'loop': loop,
                   'requests': args.streams}
            results.add('memory', transport, measure_in_process, job, args.timeout)
    for what, key in (('each of them, KiB', 'figure'), ('peak of the process, MiB', 'peak')):
        show(f'{args.streams:,} open responses, {loop}: {what}',
             [f'{results.median("memory", transport, key):.1f}' for transport in TRANSPORTS])


def run_services(args, origin, loop):
    results, bars = Results(), {}
    for _ in range(args.rounds):
        for name, service in SERVICES.items():
            for transport in SERVED:
                job = {'transport': transport, 'origin': origin, 'loop': loop,
                       'path': service.path,
                       'requests': 1 if args.quick else service.requests}
                results.add(name, transport, measure_service, job, service)
    for name, service in SERVICES.items():
        bars[service.what] = {transport: results.median(name, transport) for transport in SERVED}
        stock, own = bars[service.what].values()
        show(f'a service, {service.what}, {loop}, µs',
             (f'{stock:,.0f}', '', '', f'{own:,.0f}', f'{own / stock:.2f}'))
    return bars


SERVED = ('stock', 'lowhaio')


# The plot
# --------

COLORS = {'stock': '#9ecae1', 'lowhaio': '#d62728'}
NAMES = {'stock': "httpx2's own", 'lowhaio': 'lowhaio-httpx2'}
WIDTH, LONGEST = 560, 360


def svg(bars, footer):
    """The bars of the service, before and after, as an SVG file."""
    title = 'CPU of a FastAPI service that asks a model, ms: less is better'
    parts, y = [text(10, 20, title, 13)], 24
    for what, figures in bars.items():
        y += 24
        parts.append(text(10, y, f'{what[0].upper()}{what[1:]}', 11))
        for name, value in figures.items():
            y += 20
            width = LONGEST * value / max(figures.values())
            parts += (text(114, y, NAMES[name], 11, 'end'),
                      f'<rect x="120" y="{y - 12}" width="{width:.0f}" height="15" '
                      f'fill="{COLORS[name]}"/>',
                      text(125 + width, y, f'{value / 1000:.2f}', 11))
        y += 6
    y += 26
    parts.append(text(10, y, footer, 9))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y + 8}" '
            f'viewBox="0 0 {WIDTH} {y + 8}" font-family="sans-serif">\n'
            '<rect width="100%" height="100%" fill="white"/>\n'
            + '\n'.join(parts) + '\n</svg>\n')


def text(x, y, content, size, anchor='start'):
    return (f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" text-anchor="{anchor}">'
            f'{content}</text>')


# The command
# -----------

def version(name):
    try:
        return f'{name} {importlib.metadata.version(name)}'
    except importlib.metadata.PackageNotFoundError:
        return f'no {name}'


def about(args):
    packages = ('httpx2', 'httpcore2', 'openai', 'aiohttp', 'httpx', 'httpx-aiohttp', 'fastapi',
                'uvloop')
    return (f'{platform.python_implementation()} {platform.python_version()}, '
            f'{platform.machine()}; ' + ('instructions' if args.instructions else
                                         f'medians of {args.rounds}')
            + f'\n{", ".join(map(version, packages))}')


def run(args):
    pin(0)
    kept, bars = True, {}
    with process('--serve') as (_, origin):
        pin(1)
        print(about(args), flush=True)
        if args.instructions:
            for loop in args.loop:
                run_instructions(args, origin, loop)
            return True
        for loop in args.loop:
            kept &= run_workloads(args, origin, loop)
        for loop in args.loop:
            if 'memory' in args.only:
                run_memory(args, origin, loop)
        for loop in args.loop:
            if 'service' in args.only:
                found = run_services(args, origin, loop)
                bars = bars or found
    if args.svg and bars:
        footer = (f'{version("httpx2")}, {version("fastapi")}, CPython '
                  f'{platform.python_version()}, {args.loop[0]}, {ASKING} requests at once, '
                  f'medians of {args.rounds}')
        args.svg.write_text(svg(bars, footer), encoding='utf-8')
        print(f'Written to {args.svg}')
    return kept


def listed(known):
    def parse(text):
        names = text.split(',')
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f'no {name!r}: of {", ".join(known)}')
        return names

    return parse


def parse_args():
    what = {**{name: workload.what for name, workload in WORKLOADS.items()},
            'memory': 'the memory of 1,000 responses that are open',
            'service': 'the CPU of a FastAPI service that asks a model'}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='what is measured:\n' + '\n'.join(f'  {key:14}{value}' for key, value
                                                 in what.items()))
    parser.add_argument('--rounds', type=int, help='5, or 1 if quick')
    parser.add_argument('--loop', type=listed(LOOPS), metavar='LOOP,…',
                        help='asyncio,uvloop, or what there is of them')
    parser.add_argument('--only', type=listed(what), default=list(what), metavar='WHAT,…')
    parser.add_argument('--transports', type=listed(TRANSPORTS), default=list(TRANSPORTS),
                        metavar='TRANSPORT,…', help=','.join(TRANSPORTS))
    parser.add_argument('--streams', type=int, help='responses for the memory: 1000')
    parser.add_argument('--instructions', action='store_true',
                        help='count instructions instead, which needs valgrind')
    parser.add_argument('--svg', type=Path, help='where to write a plot of the service')
    parser.add_argument('--timeout', type=float, default=120, help='seconds for a measurement')
    parser.add_argument('--quick', action='store_true', help='only show that it works')
    parser.add_argument('--serve', action='store_true', help=argparse.SUPPRESS)
    parser.add_argument('--service', type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument('--measure', type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.loop = args.loop or [loop for loop in LOOPS if importlib.util.find_spec(loop)]
    args.rounds = args.rounds or (1 if args.quick else 5)
    args.streams = args.streams or (100 if args.quick else 1000)
    return args


def main():
    args = parse_args()
    if args.serve:
        asyncio.run(serve())
    elif args.service:
        with runner(args.service['loop'] == 'uvloop') as loop_runner:
            loop_runner.run(run_service(args.service))
    elif args.measure:
        function = measure_memory if args.measure['workload'] == 'memory' else measure
        with runner(args.measure['loop'] == 'uvloop') as loop_runner:
            print(json.dumps(loop_runner.run(function(args.measure))))
    else:
        sys.exit(not run(args))


if __name__ == '__main__':
    main()
