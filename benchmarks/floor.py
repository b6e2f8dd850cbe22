"""CPU of lowhaio for a request, against the least that any asyncio client could use.

    python benchmarks/floor.py
    python benchmarks/floor.py --rounds 3 --only small,small-32 --clients floor,lowhaio,aiohttp

An nginx of its own, pinned to one core, serves a client that is pinned to another. Each
measurement is a fresh process: connections are opened and warmed up, then user and system time of
the process is taken around the requests. The clients take turns, round by round, and the medians
are shown. Only numbers of one run are comparable.

The floor is, for small requests, `loop.add_reader` once a connection, `send`, a future and `recv`,
with nothing parsed; for bulk, a blocking loop of `recv_into` or `sendall`. Needs trustme for a
certificate; aiohttp and httpx are measured too if asked for with `--clients` and importable.
"""
import argparse
import asyncio
import contextlib
import grp
import http.client
import json
import os
import pwd
import re
import resource
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
from pathlib import Path

# name: path, concurrency, requests a measurement, what lowhaio may cost. For small requests the
# budget is a highest ratio of CPU a request; for bulk a lowest ratio of bytes a CPU second
WORKLOADS = {
    'small': ('http', '/small', 1, 10_000, 1.4),
    'small-32': ('http', '/small', 32, 30_000, 2.2),
    'small-512': ('http', '/small', 512, 30_000, None),
    'tls': ('https', '/small', 1, 8_000, 1.6),
    'tls-32': ('https', '/small', 32, 20_000, None),
    '64k': ('http', '/64k', 1, 5_000, None),
    'download': ('http', '/bulk', 1, 1, 0.85),
    'tls-download': ('https', '/bulk', 1, 1, 0.6),
    'upload': ('http', '/upload/', 1, 1, 0.85),
}
BULK = ('download', 'tls-download', 'upload')
OPTIONAL = ('small-512', 'tls-32')  # only run when named
CHUNK = bytes(65536)

NGINX_CONF = '''\
user {user} {group};
daemon off;
worker_processes 1;
worker_rlimit_nofile 4096;
error_log {root}/error.log warn;
pid {root}/nginx.pid;
events {{ worker_connections 2048; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;  # head and content of a small response in one segment
    tcp_nodelay on;
    keepalive_requests 1000000000;
    keepalive_timeout 600;
    default_type application/octet-stream;
    client_max_body_size 0;
    client_body_buffer_size 256k;
    client_body_temp_path {root}/body;
    proxy_temp_path {root}/proxy;
    fastcgi_temp_path {root}/fastcgi;
    scgi_temp_path {root}/scgi;
    uwsgi_temp_path {root}/uwsgi;
    server {{
        listen {http};
        listen 127.0.0.1:{https} ssl;
        ssl_certificate {root}/server.pem;
        ssl_certificate_key {root}/server.pem;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_cache shared:sessions:1m;
        root {root}/www;
        location /upload/ {{ dav_methods PUT; }}
    }}
}}
'''


# The server
# ----------

def free_ports(number):
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_server(('127.0.0.1', 0)))
                 for _ in range(number)]
        return [sock.getsockname()[1] for sock in socks]


@contextlib.contextmanager
def nginx(root, bulk_size):
    """Yields the origins that a fresh nginx serves: `{'http': …, 'https': …}`"""
    import trustme
    ca = trustme.CA()
    ca.cert_pem.write_to_path(root / 'ca.pem')
    ca.issue_cert('127.0.0.1').private_key_and_cert_chain_pem.write_to_path(root / 'server.pem')

    (root / 'www/upload').mkdir(parents=True)
    (root / 'www/small').write_bytes(b'-' * 100)
    (root / 'www/64k').write_bytes(CHUNK)
    with open(root / 'www/bulk', 'wb') as file:
        file.truncate(bulk_size)

    ports = dict(zip(('http', 'https'), free_ports(2), strict=True))
    user = pwd.getpwuid(os.geteuid()).pw_name
    group = grp.getgrgid(os.getegid()).gr_name
    (root / 'nginx.conf').write_text(
        NGINX_CONF.format(root=root, user=user, group=group, **ports))
    command = ('nginx', '-p', root, '-c', root / 'nginx.conf', '-e', root / 'error.log')
    path = os.environ.get('PATH', '') + ':/usr/sbin:/usr/local/sbin'
    process = subprocess.Popen(command, env={**os.environ, 'PATH': path})
    try:
        for port in ports.values():
            wait_for(process, port, root / 'error.log')
        check_small_response(ports['http'])
        yield {scheme: f'{scheme}://127.0.0.1:{port}' for scheme, port in ports.items()}
    finally:
        process.terminate()
        process.wait()


def wait_for(process, port, log):
    deadline = time.monotonic() + 10
    while True:
        try:
            return socket.create_connection(('127.0.0.1', port)).close()
        except ConnectionRefusedError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f'nginx does not run: {log.read_text()}') from None
            time.sleep(0.05)


def check_small_response(port):
    connection = http.client.HTTPConnection('127.0.0.1', port)
    connection.request('GET', '/small')
    response = connection.getresponse()
    shape = response.status, len(response.getheaders()), len(response.read())
    connection.close()
    if shape != (200, 8, 100):
        raise SystemExit(f'expected status 200, 8 fields and 100 bytes of nginx: {shape}')


# The floor
# ---------

class FloorConnection:
    def __init__(self, loop, url, context):
        self.loop = loop
        self.sock = connect(url, context)
        self.head = request_head(url)
        # The first response tells how long each is
        self.length = exchange_blocking(self.sock, self.head)

        self.sock.setblocking(False)
        loop.add_reader(self.sock, self.read)

    def read(self):
        # In the callback, not in the coroutine: the loop polls once more before the coroutine
        # runs, and would find the socket still readable and wake it in vain. One read a call
        # is enough for TLS as well, while a response has no more than one record
        try:
            self.missing -= len(self.sock.recv(65536))
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        if not self.missing:
            self.waiter.set_result(None)

    async def exchange(self):
        self.missing = self.length
        self.waiter = self.loop.create_future()
        self.sock.send(self.head)
        await self.waiter

    def close(self):
        self.loop.remove_reader(self.sock)
        self.sock.close()


def connect(url, context):
    parts = urllib.parse.urlsplit(url)
    sock = socket.create_connection((parts.hostname, parts.port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if parts.scheme == 'https':
        sock = context.wrap_socket(sock, server_hostname=parts.hostname)
    return sock


def request_head(url, method='GET', fields=''):
    parts = urllib.parse.urlsplit(url)
    return f'{method} {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\n{fields}\r\n'.encode()


def response_length(data):
    """From its first bytes, which must have all of its head"""
    head, _, _ = data.partition(b'\r\n\r\n')
    return len(head) + 4 + int(re.search(rb'content-length: (\d+)', head, re.I)[1])


def exchange_blocking(sock, head):
    """The length of the response"""
    sock.sendall(head)
    data = sock.recv(65536)
    length, got = response_length(data), len(data)
    while got < length:
        got += len(sock.recv(65536))
    return length


def floor_download(url, context, cpu):
    sock = connect(url, context)
    exchange_blocking(sock, request_head(url.replace('/bulk', '/small')))

    buffer = bytearray(262144)
    with cpu:
        sock.sendall(request_head(url))
        got = sock.recv_into(buffer)
        length = response_length(buffer[:got])
        while got < length:
            got += sock.recv_into(buffer)
    sock.close()


def floor_upload(url, context, cpu, size):
    sock = connect(url, context)
    with cpu:
        sock.sendall(request_head(url, 'PUT', f'content-length: {size}\r\n'))
        for _ in range(size // len(CHUNK)):
            sock.sendall(CHUNK)
        response = sock.recv(65536)
    assert response.startswith(b'HTTP/1.1 20'), response
    sock.close()


# The clients: each yields a coroutine function of the number of a worker that makes one request,
# and the number of bytes that its response body must have

@contextlib.asynccontextmanager
async def floor_client(url, context, concurrency):
    loop = asyncio.get_running_loop()
    connections = [FloorConnection(loop, url, context) for _ in range(concurrency)]
    yield lambda worker: connections[worker].exchange
    for connection in connections:
        connection.close()


@contextlib.asynccontextmanager
async def lowhaio_client(url, context, concurrency):
    from lowhaio import Pool, buffered
    request, close = Pool(get_ssl_context=lambda: context)

    async def exchange():
        code, _, body = await request(b'GET', url)
        await buffered(body)
        assert code == b'200'

    yield lambda worker: exchange
    await close()


@contextlib.asynccontextmanager
async def aiohttp_client(url, context, concurrency):
    import aiohttp
    connector = aiohttp.TCPConnector(limit=0, ssl=context)
    async with aiohttp.ClientSession(connector=connector) as session:
        async def exchange():
            async with session.get(url) as response:
                await response.read()
            assert response.status == 200

        yield lambda worker: exchange


@contextlib.asynccontextmanager
async def httpx_client(url, context, concurrency):
    import httpx
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(verify=context, limits=limits) as client:
        async def exchange():
            response = await client.get(url)
            assert response.status_code == 200

        yield lambda worker: exchange


CLIENTS = {
    'floor': floor_client,
    'lowhaio': lowhaio_client,
    'aiohttp': aiohttp_client,
    'httpx': httpx_client,
}


async def measure_small(client, url, context, concurrency, requests, cpu):
    async def worker(exchange, number):
        for _ in range(number):
            await exchange()

    async def run(number):
        exchanges = [exchange_of(i) for i in range(concurrency)]
        if concurrency == 1:
            await worker(exchanges[0], number)
        else:
            await asyncio.gather(*(worker(exchange, number) for exchange in exchanges))

    async with CLIENTS[client](url, context, concurrency) as exchange_of:
        await run(max(5, 500 // concurrency))
        with cpu:
            await run(requests // concurrency)


async def lowhaio_download(url, context, cpu, size):
    from lowhaio import Pool, buffered
    request, close = Pool(get_ssl_context=lambda: context)
    _, _, body = await request(b'GET', url.replace('/bulk', '/small'))
    await buffered(body)

    got = 0
    with cpu:
        _, _, body = await request(b'GET', url)
        async for chunk in body:
            got += len(chunk)
    assert got == size, got
    await close()


async def lowhaio_upload(url, context, cpu, size):
    from lowhaio import Pool, buffered
    request, close = Pool(get_ssl_context=lambda: context)

    async def chunks():
        for _ in range(size // len(CHUNK)):
            yield CHUNK

    with cpu:
        code, _, body = await request(
            b'PUT', url, headers=((b'content-length', b'%d' % size),), body=chunks)
        await buffered(body)
    assert code[:2] == b'20', code
    await close()


# Measuring
# ---------

class CPU:
    """Seconds of user and system time of this process spent in the block"""

    def __enter__(self):
        self.user, self.system = self.now()

    def __exit__(self, *_):
        user, system = self.now()
        self.user, self.system = user - self.user, system - self.system

    def now(self):
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime, usage.ru_stime


def run_client(args):
    """In the fresh process: one measurement, printed as JSON"""
    _, _, concurrency, _, _ = WORKLOADS[args.workload]
    context = ssl.create_default_context(cafile=args.ca)
    context.set_alpn_protocols(['http/1.1'])
    cpu = CPU()
    loop_factory = None
    if args.uvloop:
        import uvloop
        loop_factory = uvloop.new_event_loop

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        if args.workload not in BULK:
            runner.run(measure_small(
                args.client, args.url, context, concurrency, args.requests, cpu))
        elif args.client == 'lowhaio':
            measure = lowhaio_upload if args.workload == 'upload' else lowhaio_download
            runner.run(measure(args.url, context, cpu, args.size))
        elif args.workload == 'upload':
            floor_upload(args.url, context, cpu, args.size)
        else:
            floor_download(args.url, context, cpu)
    print(json.dumps({'user': cpu.user, 'system': cpu.system}))


def measure_in_fresh_process(args, client, workload, origins, root):
    """The CPU seconds for a request"""
    scheme, path, concurrency, requests, _ = WORKLOADS[workload]
    requests = 1 if workload in BULK else args.requests or requests
    requests = max(1, requests // concurrency) * concurrency
    if workload == 'upload':
        path += f'{client}-{time.monotonic_ns()}'
    command = [
        args.python, __file__, '--client', client, '--workload', workload,
        '--requests', str(requests), '--url', origins[scheme] + path,
        '--ca', root / 'ca.pem', '--size', str(args.size), *(['--uvloop'] * args.uvloop),
    ]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    for file in (root / 'www/upload').iterdir():
        file.unlink()
    result = json.loads(output)
    return (result['user'] + result['system']) / requests


def is_importable(python, name):
    return subprocess.run((python, '-c', f'import {name}'), stderr=subprocess.DEVNULL,
                          check=False).returncode == 0


def pin(cpu_index):
    """This process and the ones it starts from now on"""
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, {CPUS[cpu_index % len(CPUS)]})


CPUS = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else [0]


def measure_all(args):
    """Yields (workload, {client: [CPU seconds for a request, for each round]})"""
    workloads = args.only or [name for name in WORKLOADS if name not in OPTIONAL]
    clients = [client for client in args.clients
               if client == 'floor' or is_importable(args.python, client)]
    for client in set(args.clients) - set(clients):
        print(f'{client} cannot be imported: left out', file=sys.stderr)

    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        pin(0)
        with nginx(root, args.size) as origins:
            pin(1)
            for workload in workloads:
                turns = [client for client in clients
                         if workload not in BULK or client in ('floor', 'lowhaio')]
                results = {client: [] for client in turns}
                for _ in range(args.rounds):
                    for client in turns:
                        results[client].append(measure_in_fresh_process(
                            args, client, workload, origins, root))
                yield workload, results


def print_row(args, workload, results):
    budget = WORKLOADS[workload][-1]
    medians = {client: statistics.median(times) for client, times in results.items()}
    floor = medians.get('floor')
    for client, seconds in medians.items():
        spread = (max(results[client]) - min(results[client])) / seconds
        if workload in BULK:
            figure, ratio = f'{args.size / seconds / 1e6:,.0f} MB', floor and floor / seconds
        else:
            figure, ratio = f'{seconds * 1e6:,.1f} µs', floor and seconds / floor
        verdict = ''
        if client == 'lowhaio' and budget and ratio:
            sign, kept = ('≥', ratio >= budget) if workload in BULK else ('≤', ratio <= budget)
            verdict = f'{sign} {budget:<5} {"kept" if kept else "MISSED"}'
        ratio = f'{ratio:.2f}' if ratio else ''
        print(f'{workload:14}{client:10}{figure:>12}{ratio:>8}{spread:>8.0%}   {verdict}',
              flush=True)


def run_rounds(args):
    everything = {}
    print(f'{"workload":14}{"client":10}{"CPU":>12}{"ratio":>8}{"spread":>8}   budget\n'
          'CPU: µs a request, or MB a CPU second; ratio: to the floor; spread: of the rounds')
    for workload, results in measure_all(args):
        print_row(args, workload, results)
        everything[workload] = results
    if args.json:
        Path(args.json).write_text(json.dumps(everything, indent=1))


def main():
    names = ', '.join(WORKLOADS)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--only', type=lambda text: text.split(','), help=f'of {names}')
    parser.add_argument('--clients', type=lambda text: text.split(','),
                        default=['floor', 'lowhaio'], help='floor,lowhaio,aiohttp,httpx')
    parser.add_argument('--requests', type=int, help='of one measurement')
    parser.add_argument('--size', type=int, default=1024 ** 3, help='bytes of a bulk transfer')
    parser.add_argument('--uvloop', action='store_true')
    parser.add_argument('--python', default=sys.executable, help='runs the clients')
    parser.add_argument('--json', help='a file for every measurement')
    for option in ('--client', '--workload', '--url', '--ca'):  # of the fresh processes
        parser.add_argument(option, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client:
        run_client(args)
    else:
        run_rounds(args)


if __name__ == '__main__':
    main()
