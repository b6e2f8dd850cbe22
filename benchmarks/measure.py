"""Makes one measurement of one client. `run.py` starts this in a fresh process each time.

A measurement opens connections and warms up. Then it takes the CPU time of its process, with all
threads, around the requests. It checks the length of each response, and what the server has
counted: a client has failed if it opens connections where it should reuse them, or the reverse.
"""
import asyncio
import contextlib
import gc
import http.client
import importlib
import json
import os
import resource
import subprocess
import sys
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

from clients import CLIENTS
from latency import on_schedule, percentile
from server import CHUNK, EVENTS_LENGTH, POSTED, SMALL, Status
from setting import Setup

TICK = 0.001  # seconds


@dataclass(frozen=True)
class Workload:
    what: str
    call: str
    scheme: str = 'http'
    path: str = '/small'
    # How many requests are made at once, or may be.
    concurrency: int = 1
    # The requests of a measurement, and those of a quick one.
    requests: int = 1
    quick: int = 1
    # The content of a response, in bytes.
    length: int = SMALL
    is_closing: bool = False
    # How many requests the server counts for each one of the client.
    factor: int = 1
    # The bytes of a chunk of an upload.
    chunk: int = len(CHUNK)


WORKLOADS = {
    'small': Workload('GET of 100 bytes, one at a time', 'get', requests=10_000, quick=300),
    'small-32': Workload('the same, 32 at once', 'get', concurrency=32, requests=30_000,
                         quick=640),
    'small-512': Workload('the same, 512 at once', 'get', concurrency=512, requests=30_720,
                          quick=512),
    'small-fields': Workload('small, with 4 request fields', 'get_with_fields', requests=10_000,
                             quick=300),
    'name': Workload('small, from a host name', 'get', requests=10_000, quick=300),
    '64k': Workload('GET of 64 KiB', 'get', path='/64k', requests=5_000, quick=300,
                    length=len(CHUNK)),
    'post': Workload('POST of 1 KiB', 'post', path='/post', requests=5_000, quick=300, factor=2),
    'events': Workload('GET of 1,000 server-sent events, each a chunk', 'stream',
                       scheme='scripted', path='/events', requests=500, quick=50,
                       length=EVENTS_LENGTH),
    'connect': Workload('small, each on a new connection', 'get', path='/close/small',
                        requests=2_000, quick=100, is_closing=True),
    'tls': Workload('small, over TLS', 'get', scheme='https', requests=8_000, quick=300),
    'tls-32': Workload('the same, 32 at once', 'get', scheme='https', concurrency=32,
                       requests=20_000, quick=640),
    'tls-512': Workload('the same, 512 at once', 'get', scheme='https', concurrency=512,
                        requests=20_480, quick=512),
    'tls-connect': Workload('tls, each on a new connection', 'get', scheme='https',
                            path='/close/small', requests=500, quick=50, is_closing=True),
    'upload-1k': Workload('PUT of chunks of 1 KiB, for each chunk', 'upload', path='/upload/',
                          requests=65_536, quick=4_096, chunk=1024),
    'tls-upload-1k': Workload('the same, over TLS', 'upload', scheme='https', path='/upload/',
                              requests=65_536, quick=4_096, chunk=1024),
    'latency': Workload('1,000 GETs of 100 bytes a second for 30 s, from when each is due',
                        'latency', concurrency=1_000, requests=30_000, quick=1_000),
    'download': Workload('GET of 1 GiB', 'download', path='/bulk'),
    'upload': Workload('PUT of 1 GiB', 'upload', path='/upload/'),
    'tls-download': Workload('the same, over TLS', 'download', scheme='https', path='/bulk'),
    'tls-upload': Workload('the same, over TLS', 'upload', scheme='https', path='/upload/'),
    'wait': Workload("another task's longest wait for the loop, during a download", 'wait',
                     path='/bulk'),
    'idle': Workload('memory of each of 5,000 idle connections', 'idle', requests=5_000,
                     quick=200),
    'memory': Workload('memory of each of 1,000 requests in flight, and of their connections '
                       'when they are idle, to one origin', 'memory', scheme='scripted',
                       path='/held', concurrency=1_000, requests=1_000, quick=200),
    'import': Workload('import time and modules', 'import'),
}


class Failed(Exception):
    """The client did not do what it should."""


class Measurement:
    def __init__(self, job):
        self.workload = workload = WORKLOADS[job['workload']]
        self.requests = job['requests']
        self.size = job['size']
        self.origins = job['origins']
        self.origin = job['origins'][workload.scheme]
        self.url = self.origin + workload.path
        if job['workload'] == 'name':
            self.url = self.url.replace('127.0.0.1', 'localhost')
        self.setup = Setup(
            job['ca'], job['origins']['nameserver'], workload.concurrency, workload.is_closing)
        counting = 'scripted' if workload.scheme == 'scripted' else 'http'
        self.status = Status(job['origins'][counting])
        self.result = {}

    async def run(self, client):
        call = getattr(client, self.workload.call, None)
        await getattr(self, f'measure_{self.workload.call}')(client, call)
        self.result['peak'] = memory('VmHWM')

    # Requests

    async def measure_get(self, client, call):
        await self.measure_requests(call, self.url)

    measure_stream = measure_get_with_fields = measure_get

    async def measure_post(self, client, call):
        await self.measure_requests(call, self.url, POSTED)

    async def measure_requests(self, call, *args):
        concurrency, length = self.workload.concurrency, self.workload.length

        async def make(number):
            for _ in range(number):
                got = await call(*args)
                if got != length:
                    raise Failed(f'{got} bytes of content, not {length}')

        async def run(requests):
            if concurrency == 1:
                await make(requests)
            else:
                await asyncio.gather(
                    *(make(requests // concurrency) for _ in range(concurrency)))

        await run(max(2 * concurrency, self.requests // 10))
        with self.checked_counts(self.requests):
            start = time.process_time()
            await run(self.requests)
            self.result['cpu'] = (time.process_time() - start) / self.requests

    async def measure_latency(self, client, _):
        async def make():
            got = await client.get(self.url)
            if got != SMALL:
                raise Failed(f'{got} bytes of content, not {SMALL}')

        await asyncio.gather(*(make() for _ in range(16)))
        await on_schedule(make, self.requests // 30)
        with self.checked_counts(self.requests, may_open=self.requests):
            times, lags, cpu = await on_schedule(make, self.requests)
        if len(times) != self.requests:
            raise Failed(f'{len(times)} requests were answered, not {self.requests}')
        self.result['cpu'] = cpu / self.requests
        for name, share in (('p50', 0.5), ('p99', 0.99), ('p99.9', 0.999)):
            self.result[name] = percentile(times, share)
            self.result[f'lag-{name}'] = percentile(lags, share)

    @contextlib.contextmanager
    def checked_counts(self, requests, may_open=None):
        _, connections, before = self.status.read()
        yield
        _, after, requests_after = self.status.read()
        made, seen = after - connections, (requests_after - before) / self.workload.factor
        self.result['connections'] = made
        if seen != requests:
            raise Failed(f'{seen:g} requests, not {requests}')
        # Some clients open a few more connections than they need if many requests start at once.
        may_open = requests / 10 if may_open is None else may_open
        if made != requests if self.workload.is_closing else made > may_open:
            raise Failed(f'{made} new connections for {requests} requests')

    # Bulk

    async def measure_download(self, client, call):
        call = call or client.stream
        await client.get(self.origin + '/small')
        start = time.process_time()
        got = await call(self.url)
        self.result['cpu'] = time.process_time() - start
        if got != self.size:
            raise Failed(f'{got} bytes of content, not {self.size}')

    async def measure_upload(self, client, call):
        if call is None:
            raise Failed('it takes no iterator as the body of a request')
        chunk = bytes(self.workload.chunk)
        # A chunk is counted as a request is, where there are many.
        number = self.requests if self.requests > 1 else self.size // len(chunk)
        size = number * len(chunk)

        async def chunks():
            for _ in range(number):
                yield chunk

        path = f'{self.workload.path}{os.getpid()}'
        await client.get(self.origin + '/small')
        start = time.process_time()
        await call(self.origin + path, chunks, size)
        self.result['cpu'] = (time.process_time() - start) / self.requests

        connection = http.client.HTTPConnection(self.origins['http'].removeprefix('http://'))
        connection.request('HEAD', path)
        stored = int(connection.getresponse().getheader('content-length'))
        connection.close()
        if stored != size:
            raise Failed(f'{stored} bytes arrived, not {size}')

    async def measure_wait(self, client, _):
        loop = asyncio.get_running_loop()
        waits = []

        async def tick():
            while True:
                due, before = loop.time() + TICK, time.process_time()
                await asyncio.sleep(TICK)
                waits.append((loop.time() - due, time.process_time() - before))

        ticking = asyncio.create_task(tick())
        await asyncio.sleep(10 * TICK)
        waits.clear()
        await self.measure_download(client, client.stream)
        ticking.cancel()
        if not waits:
            raise Failed('the other task never ran')
        # This clock goes on while the system gives the core to another process.
        self.result['wait'], self.result['held'] = map(max, zip(*waits, strict=True))

    # Memory

    async def measure_idle(self, client, _):
        """Measure the memory of idle connections.

        They are opened one after the other, each to its own address. So memory that only many
        requests at once need is not counted.
        """
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        port = self.origin.rpartition(':')[2]

        async def open_connections(block, number):
            for index in range(number):
                await client.get(
                    f'http://127.{block}.{index // 250}.{index % 250 + 1}:{port}/small')

        active, _, _ = self.status.read()
        await open_connections(1, 100)
        gc.collect()
        before = memory('VmRSS')
        await open_connections(2, self.requests)
        gc.collect()
        self.result['idle'] = (memory('VmRSS') - before) / self.requests
        kept = self.status.read()[0] - active
        if kept != self.requests + 100:
            raise Failed(f'{kept} connections were kept, not {self.requests + 100}')


    async def measure_memory(self, client, _):
        """Measure what Python has allocated for requests that wait for their response, with their
        connections, and less what a task takes that does nothing but wait."""
        loop = asyncio.get_running_loop()

        async def wait(future):
            return await future

        async with self.held(client, 10):
            pass
        tracemalloc.start()
        before = traced()
        tasks = [loop.create_task(wait(loop.create_future())) for _ in range(self.requests)]
        await asyncio.sleep(0)
        of_tasks = traced() - before
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        del tasks, task

        before = traced()
        async with self.held(client, self.requests):
            self.result['flight'] = (traced() - before - of_tasks) / self.requests
        self.result['idle'] = (traced() - before) / self.requests
        self.result['task'] = of_tasks / self.requests
        tracemalloc.stop()

    @contextlib.asynccontextmanager
    async def held(self, client, number):
        """So many requests, each of which waits for its response."""
        before = self.status.held()
        tasks = [asyncio.create_task(client.get(self.url)) for _ in range(number)]
        while self.status.held() < before + number:
            await asyncio.sleep(10 * TICK)
        yield
        self.status.release()
        for task in tasks:
            if (got := await task) != SMALL:
                raise Failed(f'{got} bytes of content, not {SMALL}')


def traced():
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def memory(field):
    """The memory of this process in bytes.

    ru_maxrss would include that of the process that it was forked from.
    """
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(field + ':'):
            return int(line.split()[1]) * 1024
    raise Failed(f'the system does not tell {field}')


IMPORT = '''
import asyncio, json, sys, time
modules, start = len(sys.modules), time.process_time()
import {}
print(json.dumps({{'import': time.process_time() - start, 'modules': len(sys.modules) - modules}}))
'''


def measure_import(module):
    """Measure an import in another fresh process, since too much is imported in this one.

    The second import counts, because the modules may have been compiled in the first.
    """
    # Without the directory in which this runs, which may have another one.
    command = (sys.executable, '-P', '-c', IMPORT.format(module))
    environment = {**os.environ, 'PYTHONPATH': sys.path[0]}
    environment.pop('PYTHONDONTWRITEBYTECODE', None)
    for _ in range(2):
        output = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, env=environment).stdout
    return json.loads(output)


def runner(loop):
    if loop == 'asyncio':
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=importlib.import_module(loop).new_event_loop)


def main():
    job = json.loads(sys.argv[1])
    sys.path.insert(0, job['library'])
    make_client, module, _ = CLIENTS[job['client']]
    if job['workload'] == 'import':
        print(json.dumps(measure_import(module)))
        return

    async def measure():
        measurement = Measurement(job)
        async with make_client(measurement.setup) as client:
            await measurement.run(client)
        return measurement.result

    with runner(job['loop']) as loop_runner:
        result = loop_runner.run(measure())
    print(json.dumps(result), flush=True)
    # The process ends without unloading anything, since some clients crash then, now and again.
    os._exit(0)


if __name__ == '__main__':
    main()
