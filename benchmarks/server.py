"""Starts the servers that the benchmarks measure against, on loopback.

One is an nginx. Beside it, a process gives scripted answers for what nginx does not do: a chunked
response of a thousand small chunks, and the nameserver of a host name. It also has the small
response of nginx, for what needs no nginx.

Both count connections and requests, so that a measurement can tell whether its client did what it
should. It needs trustme for a certificate.
"""
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
import struct
import subprocess
import sys
import time
from pathlib import Path

CHUNK = bytes(65536)
SMALL = 100
POSTED = bytes(1024)

EVENT = b'event: tick\ndata: {"number": %06d}\n\n'
EVENTS = [EVENT % number for number in range(1000)]
EVENTS_LENGTH = sum(map(len, EVENTS))
EVENTS_RESPONSE = (
    b'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-store\r\n'
    b'transfer-encoding: chunked\r\n\r\n'
    + b''.join(b'%x\r\n%b\r\n' % (len(event), event) for event in EVENTS) + b'0\r\n\r\n')

# As nginx has it.
SMALL_RESPONSE = (
    b'HTTP/1.1 200 OK\r\nserver: nginx\r\ndate: Sat, 01 Nov 2025 12:00:00 GMT\r\n'
    b'content-type: application/octet-stream\r\ncontent-length: %d\r\n'
    b'last-modified: Sat, 01 Nov 2025 11:00:00 GMT\r\nconnection: keep-alive\r\n'
    b'etag: "6905e8f0-64"\r\naccept-ranges: bytes\r\n\r\n%b' % (SMALL, b'-' * SMALL))

NGINX_CONF = '''\
user {user} {group};
daemon off;
worker_processes 1;
worker_rlimit_nofile {files};
error_log {root}/error.log warn;
pid {root}/nginx.pid;
events {{ worker_connections {files}; }}
http {{
    access_log off;
    log_format tls "$ssl_protocol $ssl_curve $ssl_session_reused";
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
    upstream itself {{
        server 127.0.0.1:{http};
        keepalive 16;
        keepalive_requests 1000000000;
    }}
    server {{
        listen {http} backlog=4096;
        listen 127.0.0.1:{https} ssl backlog=4096;
        allow 127.0.0.0/8;
        deny all;
        ssl_certificate {root}/server.pem;
        ssl_certificate_key {root}/server.pem;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_cache shared:sessions:1m;
        root {root}/www;
        location = /status {{ stub_status; }}
        location /close/ {{
            alias {root}/www/;
            keepalive_timeout 0;  # "connection: close" in each response
        }}
        location = /tls {{
            alias {root}/www/small;
            access_log {root}/tls.log tls;  # a line for each connection
            keepalive_timeout 0;
        }}
        location /upload/ {{ dav_methods PUT; }}
        location = /post {{
            if ($http_content_length != {posted}) {{ return 411; }}
            # Only a proxy reads the whole body before it answers
            proxy_pass http://itself/small;
            proxy_method GET;
            proxy_pass_request_body off;
            proxy_http_version 1.1;
            proxy_set_header connection "";
            proxy_set_header content-length "";
        }}
    }}
}}
'''


# nginx
# -----

@contextlib.contextmanager
def nginx(root, bulk_size):
    """Yield the origins that a fresh nginx serves, as `{'http': …, 'https': …}`."""
    import trustme
    ca = trustme.CA()
    ca.cert_pem.write_to_path(root / 'ca.pem')
    ca.issue_cert('127.0.0.1').private_key_and_cert_chain_pem.write_to_path(root / 'server.pem')

    (root / 'www/upload').mkdir(parents=True)
    (root / 'www/small').write_bytes(b'-' * SMALL)
    (root / 'www/64k').write_bytes(CHUNK)
    with open(root / 'www/bulk', 'wb') as file:
        file.truncate(bulk_size)

    ports = dict(zip(('http', 'https'), free_ports(2), strict=True))
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    (root / 'nginx.conf').write_text(NGINX_CONF.format(
        root=root, user=pwd.getpwuid(os.geteuid()).pw_name,
        group=grp.getgrgid(os.getegid()).gr_name, posted=len(POSTED),
        files=16384 if files == resource.RLIM_INFINITY else min(files, 16384), **ports))
    command = ('nginx', '-p', root, '-c', root / 'nginx.conf', '-e', root / 'error.log')
    process = subprocess.Popen(command, env=nginx_environment())
    try:
        for port in ports.values():
            wait_for(process, port, root / 'error.log')
        check_small_response(ports['http'])
        yield {scheme: f'{scheme}://127.0.0.1:{port}' for scheme, port in ports.items()}
    finally:
        process.terminate()
        process.wait()


def nginx_environment():
    path = os.environ.get('PATH', '') + ':/usr/sbin:/usr/local/sbin'
    return {**os.environ, 'PATH': path}


def nginx_version():
    command = ('nginx', '-v')
    output = subprocess.run(command, env=nginx_environment(), check=True, capture_output=True)
    return output.stderr.decode().strip().rpartition('/')[2]


def free_ports(number):
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_server(('127.0.0.1', 0)))
                 for _ in range(number)]
        return [sock.getsockname()[1] for sock in socks]


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
    if shape != (200, 8, SMALL):
        raise SystemExit(f'expected status 200, 8 fields and 100 bytes of nginx: {shape}')


class Status:
    """What a server has counted: its open connections, all its connections, and requests."""

    def __init__(self, origin):
        self.connection = http.client.HTTPConnection(origin.removeprefix('http://'))
        self.connection_requests = 0
        self.read()

    def read(self):
        """The counts without this connection and its requests."""
        text = self.ask('/status')
        active = re.search(r'Active connections: (\d+)', text)[1]
        accepted, requests = re.search(r'^ (\d+) \d+ (\d+)', text, re.MULTILINE).groups()
        return int(active) - 1, int(accepted) - 1, int(requests) - self.connection_requests

    def held(self):
        """How many requests for /held wait for their answer."""
        return int(re.search(r'Held: (\d+)', self.ask('/status'))[1])

    def release(self):
        """Have all of them answered."""
        self.ask('/release')

    def ask(self, path):
        self.connection.request('GET', path)
        self.connection_requests += 1
        return self.connection.getresponse().read().decode()


# The scripted answers
# --------------------

RESPONSES = {b'/events': EVENTS_RESPONSE, b'/small': SMALL_RESPONSE}


class Scripted(asyncio.Protocol):
    """Answers each GET of `RESPONSES` in one write, and /status as nginx does.

    What asks for /held is answered when something asks for /release.
    """

    held = []
    active = accepted = requests = 0

    def connection_made(self, transport):
        self.transport = transport
        self.data = b''
        Scripted.active += 1
        Scripted.accepted += 1

    def connection_lost(self, _):
        Scripted.active -= 1

    def data_received(self, data):
        self.data += data
        while b'\r\n\r\n' in self.data:
            head, _, self.data = self.data.partition(b'\r\n\r\n')
            path = head.split(b' ', 2)[1]
            Scripted.requests += 1
            if path == b'/held':
                self.held.append(self.transport)
                continue
            if path == b'/release':
                for transport in self.held:
                    transport.write(SMALL_RESPONSE)
                self.held.clear()
            self.transport.write(RESPONSES.get(path) or status_response())


def status_response():
    text = (f'Active connections: {Scripted.active}\nserver accepts handled requests\n'
            f' {Scripted.accepted} {Scripted.accepted} {Scripted.requests}\n'
            f'Held: {len(Scripted.held)}\n').encode()
    return b'HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b' % (len(text), text)


class Nameserver(asyncio.DatagramProtocol):
    """Has an A record for every name, which stays fresh for an hour."""

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, query, address):
        is_ipv4 = query[-4:-2] == b'\0\1'
        answer = b'\xc0\x0c' + struct.pack('!HHLH', 1, 1, 3600, 4) + bytes((127, 0, 0, 1))
        self.transport.sendto(
            query[:2] + struct.pack('!HHHHH', 0x8180, 1, is_ipv4, 0, 0) + query[12:]
            + answer * is_ipv4, address)


async def serve():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Scripted, '127.0.0.1', 0, backlog=4096)
    names, _ = await loop.create_datagram_endpoint(Nameserver, ('127.0.0.1', 0))
    port = server.sockets[0].getsockname()[1]
    print(json.dumps({'scripted': f'http://127.0.0.1:{port}',
                      'nameserver': names.get_extra_info('sockname')}), flush=True)
    is_over = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), is_over.set)
    await is_over.wait()


@contextlib.contextmanager
def scripted():
    """Yield the origin of the scripted answers, and the address of the nameserver."""
    command = (sys.executable, Path(__file__).resolve())
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.stdin.close()


@contextlib.contextmanager
def servers(root, bulk_size):
    """Yield the origins of nginx and of the scripted answers, and the nameserver's address."""
    with nginx(root, bulk_size) as origins, scripted() as others:
        yield {**origins, **others}


# Where processes run
# -------------------

CPUS = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else [0]


def pin(cpu_index):
    """Pin this process, and those that it starts from now on, to a core."""
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, {CPUS[cpu_index % len(CPUS)]})


if __name__ == '__main__':
    asyncio.run(serve())
