"""Starts the nameservers that people run, each with the same zone, and stands in front of them.

Each has a configuration and a directory of its own, and a port of 127.0.0.1 that is free.
CONTRIBUTING.md has the packages of Debian.
"""

import contextlib
import heapq
import itertools
import os
import pathlib
import random
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time

# In seconds. Many times what it takes, and there so that a hang becomes a failure.
START_TIMEOUT = 30
STOP_TIMEOUT = 10

ZONE = 'names.example'
TYPES = {1: 'A', 5: 'CNAME', 16: 'TXT', 28: 'AAAA'}


# ------------------------------------------------------------------------------------ the one zone


def loopback(number):
    return f'127.0.0.{number}'


def records(moved_to='127.0.0.1'):
    """(name, TTL, type, value) of all that each nameserver serves."""
    yield 'www', 60, 'A', loopback(1)
    for name, number in ('five', 5), ('thirty', 30), ('sixty', 60), ('hundred', 100):
        for last in range(1, number + 1):
            yield name, 60, 'A', loopback(last)
    for last in range(1, 6):
        yield 'turning', 1, 'A', loopback(last)
    yield 'zero', 0, 'A', loopback(1)
    yield 'moved', 1, 'A', moved_to
    yield 'six', 60, 'AAAA', '::1'
    yield 'text', 60, 'TXT', 'some'
    for length in 3, 10:
        for number in range(length, 0, -1):
            target = f'chain{length}-{number - 1}' if number > 1 else 'www'
            name = f'chain{length}' if number == length else f'chain{length}-{number}'
            yield name, 60, 'CNAME', target
    yield '*.many', 60, 'A', loopback(1)


def zone_file(**changes):
    lines = [f'$ORIGIN {ZONE}.',
             '@ 3600 IN SOA ns hostmaster 1 3600 600 86400 60',
             '@ 3600 IN NS ns',
             'ns 3600 IN A 127.0.0.1']
    lines += [f'{name} {ttl} IN {kind} {value}' for name, ttl, kind, value in records(**changes)]
    return '\n'.join(lines) + '\n'


# ----------------------------------------------------------------------------------- how each runs

# Each writes what it needs into the directory, and returns the command line. The file `zone` is
# there already.


def dnsmasq(directory, port, **changes):
    """It knows no zone file."""
    options = []
    for name, ttl, kind, value in records(**changes):
        full = f'{name}.{ZONE}'
        if name.startswith('*.'):
            options.append(f'address=/{full[2:]}/{value}')
        elif kind in ('A', 'AAAA'):
            options.append(f'host-record={full},{value},{ttl}')
        elif kind == 'CNAME':
            options.append(f'cname={full},{value}.{ZONE},{ttl}')
        else:
            options.append(f'txt-record={full},{value}')
    (directory / 'conf').write_text('\n'.join([
        'no-resolv', 'no-hosts', 'no-daemon', 'bind-interfaces', 'listen-address=127.0.0.1',
        f'port={port}', 'pid-file=', 'user=', 'group=', f'local=/{ZONE}/', *options]) + '\n')
    return ['dnsmasq', f'--conf-file={directory}/conf']


def unbound(directory, port, **changes):
    """A recursive server, which asks its own copy of the zone and keeps the answers."""
    (directory / 'conf').write_text(f"""
server:
    interface: 127.0.0.1
    port: {port}
    username: ""
    chroot: ""
    directory: "{directory}"
    pidfile: ""
    do-daemonize: no
    use-syslog: no
    module-config: "iterator"
    num-threads: 1
auth-zone:
    name: "{ZONE}"
    zonefile: "{directory}/zone"
    for-downstream: no
    for-upstream: yes
    fallback-enabled: no
remote-control:
    control-enable: no
""")
    return ['unbound', '-d', '-c', directory / 'conf']


def bind(directory, port, **changes):
    (directory / 'conf').write_text(f"""
options {{
    directory "{directory}";
    listen-on port {port} {{ 127.0.0.1; }};
    listen-on-v6 {{ none; }};
    pid-file none;
    session-keyfile none;
    recursion no;
    notify no;
    dnssec-validation no;
}};
controls {{ }};
zone "{ZONE}" {{ type primary; file "zone"; }};
""")
    return ['named', '-g', '-n', '1', '-c', directory / 'conf']


def knot(directory, port, **changes):
    (directory / 'conf').write_text(f"""
server:
    listen: 127.0.0.1@{port}
    rundir: "{directory}"
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
database:
    storage: "{directory}"
log:
  - target: stderr
    any: info
zone:
  - domain: {ZONE}
    file: "{directory}/zone"
    zonefile-sync: -1
    journal-content: none
""")
    return ['knotd', '-c', directory / 'conf']


def nsd(directory, port, **changes):
    (directory / 'conf').write_text(f"""
server:
    ip-address: 127.0.0.1@{port}
    username: ""
    chroot: ""
    zonesdir: "{directory}"
    database: ""
    pidfile: "{directory}/pid"
    xfrdfile: "{directory}/xfrd"
    xfrdir: "{directory}"
    zonelistfile: "{directory}/list"
    server-count: 1
    # Else it cuts off most answers from the two hundredth in a second on, so that TCP is used.
    rrl-ratelimit: 0
remote-control:
    control-enable: no
zone:
    name: {ZONE}
    zonefile: zone
""")
    return ['nsd', '-d', '-c', directory / 'conf']


def powerdns(directory, port, **changes):
    (directory / 'named.conf').write_text(
        f'zone "{ZONE}" {{ type native; file "{directory}/zone"; }};\n')
    (directory / 'pdns.conf').write_text(f"""
launch=bind
bind-config={directory}/named.conf
local-address=127.0.0.1
local-port={port}
socket-dir={directory}
receiver-threads=1
distributor-threads=1
guardian=no
daemon=no
""")
    return ['pdns_server', f'--config-dir={directory}']


def powerdns_recursor(directory, port, **changes):
    (directory / 'recursor.conf').write_text(f"""
auth-zones={ZONE}={directory}/zone
local-address=127.0.0.1
local-port={port}
socket-dir={directory}
threads=1
daemon=no
dnssec=off
hint-file=no
security-poll-suffix=
""")
    return ['pdns_recursor', f'--config-dir={directory}']


def knot_resolver(directory, port, upstream_port, **changes):
    for path in directory.glob('*.mdb'):
        path.unlink()  # it would keep its answers over a restart
    (directory / 'conf').write_text(f"""
net.listen('127.0.0.1', {port}, {{ kind = 'dns' }})
modules.unload('ta_update')
modules.unload('ta_signal_query')
modules.unload('priming')
modules.unload('detect_time_skew')
trust_anchors.remove('.')
cache.size = 10 * MB
policy.add(policy.suffix(policy.STUB('127.0.0.1@{upstream_port}'), {{todname('{ZONE}')}}))
""")
    return ['kresd', '-n', '-q', '-c', directory / 'conf', directory]


def dnsdist(directory, port, upstream_port, **changes):
    """A load balancer, with a cache."""
    (directory / 'conf').write_text(f"""
setLocal('127.0.0.1:{port}')
setSecurityPollSuffix('')
newServer({{address='127.0.0.1:{upstream_port}', healthCheckMode='up'}})
getPool(''):setCache(newPacketCache(1000))
""")
    return ['dnsdist', '--supervised', '--disable-syslog', '-C', directory / 'conf']


class Program:
    """A nameserver, and what of it a test has to know."""

    def __init__(self, write, binary, package, *, upstream=None, raises_ttl_0=False):
        self.write = write
        self.binary = binary
        self.package = package
        self.upstream = upstream  # the name of another one, that this one asks
        self.raises_ttl_0 = raises_ttl_0  # in some of its answers, or in all

    def missing(self):
        """The packages of Debian that are not installed, and have to be."""
        others = PROGRAMS[self.upstream].missing() if self.upstream else []
        return others if shutil.which(self.binary, path=PATH) else [self.package, *others]


# The programs are where only an administrator's shell looks.
PATH = os.pathsep.join([os.environ.get('PATH', ''), '/usr/sbin', '/sbin', '/usr/local/sbin'])

PROGRAMS = {
    'dnsmasq': Program(dnsmasq, 'dnsmasq', 'dnsmasq-base'),
    'unbound': Program(unbound, 'unbound', 'unbound'),
    'bind': Program(bind, 'named', 'bind9'),
    'knot': Program(knot, 'knotd', 'knot'),
    'nsd': Program(nsd, 'nsd', 'nsd'),
    'powerdns': Program(powerdns, 'pdns_server', 'pdns-server and pdns-backend-bind'),
    'powerdns-recursor': Program(powerdns_recursor, 'pdns_recursor', 'pdns-recursor',
                                 raises_ttl_0=True),
    'knot-resolver': Program(knot_resolver, 'kresd', 'knot-resolver', upstream='nsd',
                             raises_ttl_0=True),
    'dnsdist': Program(dnsdist, 'dnsdist', 'dnsdist', upstream='nsd'),
}


class Running:
    """One of them, that can be stopped and started again on the same port."""

    def __init__(self, name):
        self.name = name
        self.program = PROGRAMS[name]
        # Those of pytest have paths that are too long for some sockets.
        self.temporary = tempfile.TemporaryDirectory()
        self.directory = pathlib.Path(self.temporary.name)
        self.port = free_port()
        self.process = self.upstream = None

    def start(self, **changes):
        (self.directory / 'zone').write_text(zone_file(**changes))
        options = dict(changes)
        if self.program.upstream:
            self.upstream = Running(self.program.upstream)
            self.upstream.start(**changes)
            options['upstream_port'] = self.upstream.port
        args = self.program.write(self.directory, self.port, **options)
        with open(self.directory / 'output', 'wb') as output:
            self.process = subprocess.Popen(
                args, cwd=self.directory, env={**os.environ, 'PATH': PATH},
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                # A group of its own: some have child processes
                start_new_session=True)
        deadline = time.monotonic() + START_TIMEOUT
        while self.process.poll() is None and time.monotonic() < deadline:
            if answers(self.port):
                return
            time.sleep(0.02)
        why = ('did not answer' if self.process.poll() is None
               else f'ended with {self.process.returncode}')
        self.stop()
        raise AssertionError(
            f'{self.name} {why}. It wrote:\n{(self.directory / "output").read_text()}')

    def stop(self):
        """At once, as if its machine had been switched off."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(STOP_TIMEOUT)
            self.process = None
        if self.upstream is not None:
            self.upstream.close()
            self.upstream = None

    def close(self):
        self.stop()
        self.temporary.cleanup()


@contextlib.contextmanager
def running(name):
    nameserver = Running(name)
    try:
        nameserver.start()
        yield nameserver
    finally:
        nameserver.close()


def free_port():
    """One that is free for UDP and TCP, at 127.0.0.1 and at 127.0.0.2.

    It is none of those that the system gives to clients: one may have it while a nameserver, which
    is to come back there, is away.
    """
    while True:
        port = random.randrange(10_000, 32_768)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for kind in socket.SOCK_STREAM, socket.SOCK_DGRAM:
                for address in '127.0.0.1', '127.0.0.2':
                    sock = stack.enter_context(socket.socket(socket.AF_INET, kind))
                    sock.bind((address, port))
            return port


def query(name, kind=1, number=1):
    labels = b''.join(bytes([len(label)]) + label.encode() for label in name.split('.'))
    return struct.pack('!HHHHHH', number, 0x0100, 1, 0, 0, 0) + labels + struct.pack(
        '!BHH', 0, kind, 1)


def answers(port):
    """Whether a nameserver gives the address of the zone's first name."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.5)
        try:
            sock.connect(('127.0.0.1', port))
            sock.send(query(f'www.{ZONE}'))
            reply = sock.recv(4096)
        except OSError:
            return False
        return reply[3] & 15 == 0 and struct.unpack('!H', reply[6:8])[0] > 0


# ------------------------------------------------------------------------- what stands before them


class Relay:
    """Hands on what is asked at its own port, and the answers. It counts, and can misbehave."""

    def __init__(self, nameserver):
        self.name = nameserver.name
        self.upstream = ('127.0.0.1', nameserver.port)
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 ** 20)
        self.port = None
        while self.port is None:
            port = free_port()
            with contextlib.suppress(OSError):
                self.sock.bind(('127.0.0.1', port))
                self.port = port
        self.listener = socket.create_server(('127.0.0.1', self.port))
        self.wakers = socket.socketpair()
        self.reset()
        self.threads = [threading.Thread(target=run, daemon=True)
                        for run in (self.run, self.run_tcp)]
        for thread in self.threads:
            thread.start()

    def reset(self):
        self.asked = []  # (name, type, 'UDP' or 'TCP') of each query
        self.delay = 0  # of each answer, in seconds
        self.lost = 0  # so many of the next queries get no answer
        self.silent_for = ()  # types that get no answer
        self.failing_for = ()  # types that get SERVFAIL
        self.most_at_once = 0  # queries that had no answer yet
        self.has_connection = False

    def count(self, name, *types):
        """How often a name of the zone was asked for."""
        return sum(asked == f'{name}.{ZONE}' and kind in (types or TYPES.values())
                   for asked, kind, _ in self.asked)

    def names(self):
        """Whose A records were asked for, in order, without the zone's name.

        AAAA records are, too, when a busy machine needs more than 0.25 seconds for an answer.
        """
        return [name.removesuffix(f'.{ZONE}') for name, kind, _ in self.asked if kind == 'A']

    def run(self):
        numbers = itertools.count()
        waiting = {}  # upstream socket: (client, question)
        due = []  # (time, number, client, reply)
        poll = select.poll()
        for sock in self.sock, self.wakers[0]:
            poll.register(sock, select.POLLIN)
        while True:
            wait = max(0, due[0][0] - time.monotonic()) * 1000 if due else None
            ready = poll.poll(wait)
            while due and due[0][0] <= time.monotonic():
                _, _, client, reply = heapq.heappop(due)
                self.sock.sendto(reply, client)
            for fd, _ in ready:
                if fd == self.wakers[0].fileno():
                    for sock, *_ in waiting.values():
                        sock.close()
                    return
                if fd == self.sock.fileno():
                    asked, client = self.sock.recvfrom(4096)
                    question = self.note(asked, 'UDP')
                    if self.lost or question[1] in self.silent_for:
                        self.lost = max(0, self.lost - 1)
                        continue
                    self.most_at_once = max(self.most_at_once, 1 + len(waiting) + len(due))
                    if question[1] in self.failing_for:
                        failed = asked[:2] + struct.pack('!BBHHHH', 0x81, 0x82, 1, 0, 0, 0)
                        end = 12 + asked[12:].index(0) + 5
                        self.sock.sendto(failed + asked[12:end], client)
                        continue
                    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                    sock.connect(self.upstream)
                    sock.send(asked)
                    waiting[sock.fileno()] = sock, client
                    poll.register(sock, select.POLLIN)
                else:
                    sock, client = waiting.pop(fd)
                    poll.unregister(sock)
                    with sock, contextlib.suppress(ConnectionRefusedError):
                        reply = sock.recv(65535)
                        heapq.heappush(
                            due, (time.monotonic() + self.delay, next(numbers), client, reply))

    def run_tcp(self):
        """One query for each connection, one after the other."""
        poll = select.poll()
        poll.register(self.listener, select.POLLIN)
        with contextlib.suppress(OSError):  # it has been shut down
            while True:
                # Linux gives the next free descriptor to an accept() that waits, and the tests
                # compare which are in use.
                poll.poll()
                client = self.listener.accept()[0]
                self.has_connection = True
                with client, client.makefile('rb') as asked:
                    if length := asked.read(2):
                        query = asked.read(int.from_bytes(length))
                        self.note(query, 'TCP')
                        with socket.create_connection(self.upstream) as sock:
                            sock.sendall(length + query)
                            with sock.makefile('rb') as answered:
                                length = answered.read(2)
                                client.sendall(length + answered.read(int.from_bytes(length)))
                self.has_connection = False

    def note(self, asked, transport):
        labels = []
        position = 12
        while length := asked[position]:
            labels.append(asked[position + 1:position + 1 + length].decode().lower())
            position += 1 + length
        kind = struct.unpack('!H', asked[position + 1:position + 3])[0]
        question = '.'.join(labels), TYPES.get(kind, str(kind))
        self.asked.append((*question, transport))
        return question

    def stop(self):
        self.wakers[1].send(b'x')
        self.listener.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join()
        for sock in self.sock, self.listener, *self.wakers:
            sock.close()


@contextlib.contextmanager
def relay_to(nameserver):
    relay = Relay(nameserver)
    try:
        yield relay
    finally:
        relay.stop()
