"""What others do with names, beside lowhaio: prints a table in Markdown.

    python benchmarks/names_compared.py
    python benchmarks/names_compared.py --only "40 addresses" --clients lowhaio,getaddrinfo

Each situation is a hosts file, a resolv.conf and a nameserver that behaves in some way. In each, a
name is asked for by lowhaio, by socket.getaddrinfo, and by aiohttp with each of its two resolvers:
the default one, which calls getaddrinfo in threads, and that of aiodns, which is c-ares. What is
counted is what the nameserver got, and how long the program waited.

getaddrinfo reads /etc/hosts and /etc/resolv.conf, and asks port 53 only. So all of it runs in a
network and a file system of its own, where these files are others, and 127.0.0.1 to 127.0.0.3 have
nameservers. This is done with `unshare` of util-linux and `ip` of iproute2, on Linux. The machine
itself stays as it is. The others are installed in a virtual environment in .cache.
"""
import argparse
import asyncio
import contextlib
import functools
import heapq
import itertools
import json
import os
import platform
import select
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGES = 'aiohttp==3.14.5', 'aiodns==4.0.4', 'aiodnsresolver==0.0.157'
CLIENTS = {
    'lowhaio': 'lowhaio',
    'getaddrinfo': '`getaddrinfo`',
    'threaded': 'aiohttp, `ThreadedResolver`',
    'aiodns': 'aiohttp, `AsyncResolver` (aiodns)',
}
PORT = 8080  # of the HTTP server, at all addresses
PATIENCE = 30  # seconds: after these, what has not answered is given up
A, CNAME, SOA, AAAA = 1, 5, 6, 28
NXDOMAIN, SERVFAIL = 3, 2


# The nameservers
# ---------------

class Nameserver:
    """On UDP and TCP, at port 53 of an address."""

    def __init__(self, address):
        self.address = address
        self.records = {}  # of a name: of a type: values
        self.ttl = 300
        self.delay = 0  # seconds
        self.silent = False
        self.lost = 0  # so many of the next queries get no answer
        self.failing = ()  # types that get SERVFAIL
        self.turning = 0  # so many of the addresses at a time
        self.queries = []  # (name, type, 'UDP' or 'TCP')
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 ** 21)
        self.udp.bind((address, 53))
        self.tcp = socket.create_server((address, 53))
        self.wakers = socket.socketpair()
        self.threads = [threading.Thread(target=run, daemon=True)
                        for run in (self.run_udp, self.run_tcp)]
        for thread in self.threads:
            thread.start()

    def run_udp(self):
        numbers = itertools.count()
        due = []
        sock = self.udp
        while True:
            wait = max(0, due[0][0] - time.monotonic()) if due else None
            ready = select.select([sock, self.wakers[0]], [], [], wait)[0]
            while due and due[0][0] <= time.monotonic():
                _, _, client, reply = heapq.heappop(due)
                sock.sendto(reply, client)
            if self.wakers[0] in ready:
                sock.close()
                return
            if ready:
                asked, client = sock.recvfrom(4096)
                if (reply := self.reply(asked, 'UDP')) is not None:
                    at = time.monotonic() + self.delay
                    heapq.heappush(due, (at, next(numbers), client, reply))

    def run_tcp(self):
        with contextlib.suppress(OSError):
            while True:
                sock = self.tcp.accept()[0]
                threading.Thread(target=self.serve, args=(sock,), daemon=True).start()

    def serve(self, sock):
        with sock, sock.makefile('rb') as file:
            while header := file.read(2):
                reply = self.reply(file.read(struct.unpack('!H', header)[0]), 'TCP')
                if reply is None:
                    return
                sock.sendall(struct.pack('!H', len(reply)) + reply)

    def close(self):
        """Its ports are closed, as if it had never been there."""
        self.wakers[1].send(b'x')
        # One that waits for a connection would keep the port.
        self.tcp.shutdown(socket.SHUT_RDWR)
        self.tcp.close()
        for thread in self.threads:
            thread.join()

    def reply(self, asked, transport):
        labels, position = [], 12
        while length := asked[position]:
            labels.append(asked[position + 1:position + 1 + length].decode().lower())
            position += 1 + length
        question = asked[12:position + 5]
        name, kind = '.'.join(labels), struct.unpack('!H', asked[position + 1:position + 3])[0]
        self.queries.append((name, kind, transport))
        if self.silent:
            return None
        if self.lost:
            self.lost -= 1
            return None
        records, code = self.find(name, kind)
        edns = asked[10:12] != b'\0\0'
        most = 65535
        if transport == 'UDP':
            # The class field of the OPT record is the size.
            most = struct.unpack('!H', asked[position + 8:position + 10])[0] if edns else 512
        answer = b''.join(records)
        is_cut_off = 12 + len(question) + len(answer) + 11 * edns > most
        if is_cut_off:
            records, answer = [], b''
        # A negative answer says how long it may be kept.
        authority = b'' if records or code == SERVFAIL or is_cut_off else self.record(
            'test', SOA, bytes(2) + struct.pack('!IIIII', 1, 3600, 600, 86400, 60), 60)
        flags = 0x8180 | 0x0200 * is_cut_off | code
        header = struct.pack('!HHHHHH', struct.unpack('!H', asked[:2])[0], flags, 1,
                             len(records), bool(authority), edns)
        opt = struct.pack('!BHHIH', 0, 41, 1232, 0, 0) if edns else b''
        return header + question + answer + authority + opt

    def find(self, name, kind):
        if kind in self.failing:
            return [], SERVFAIL
        records = []
        while CNAME in self.records.get(name, {}):
            target = self.records[name][CNAME][0]
            records.append(self.record(name, CNAME, wire_name(target)))
            name = target
        if name not in self.records and not records:
            wild = '*.' + name.partition('.')[2]
            if wild not in self.records:
                return [], NXDOMAIN
            kinds = self.records[wild]
        else:
            kinds = self.records[name]
        values = kinds.get(kind, [])
        if self.turning:
            values = [values[(len(self.queries) * self.turning + number) % len(values)]
                      for number in range(self.turning)] if values else []
        family = socket.AF_INET if kind == A else socket.AF_INET6
        records += [self.record(name, kind, socket.inet_pton(family, value)) for value in values]
        return records, 0

    def record(self, name, kind, data, ttl=None):
        return wire_name(name) + struct.pack(
            '!HHIH', kind, 1, self.ttl if ttl is None else ttl, len(data)) + data


def wire_name(name):
    return b''.join(bytes([len(label)]) + label.encode() for label in name.split('.')) + b'\0'


# The HTTP server, which tells the address at which it was reached
# ----------------------------------------------------------------

async def serve_http():
    async def serve(reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b'\r\n\r\n')
                address, port = writer.get_extra_info('sockname')[:2]
                peer = writer.get_extra_info('peername')[1]
                body = json.dumps([address, peer]).encode()
                close = b'connection: close\r\n' if b' /close ' in head else b''
                writer.write(b'HTTP/1.1 200 OK\r\n%bcontent-length: %d\r\n\r\n%b'
                             % (close, len(body), body))
                await writer.drain()
        writer.close()

    servers = [await asyncio.start_server(serve, host, PORT, backlog=4096)
               for host in ('0.0.0.0', '::')]
    await asyncio.gather(*(server.serve_forever() for server in servers))


# The clients, each in a process of its own
# -----------------------------------------
#
# It reads commands, a line of JSON each, and writes a line of JSON for each: the answers, each as
# [address, port of the client] or a text that is an error, the seconds, and how many sockets of
# UDP and threads there were at most.

async def use_lowhaio():
    from lowhaio import Pool, buffered

    request, close = Pool()

    async def ask(name, target):
        code, headers, body = await request(b'GET', f'http://{name}:{PORT}{target}')
        return json.loads(await buffered(body))

    return ask, close


async def use_getaddrinfo():
    async def ask(name, target):
        found = socket.getaddrinfo(name, PORT, type=socket.SOCK_STREAM)
        return [[info[4][0] for info in found], None]

    async def close():
        pass

    return ask, close


async def use_aiohttp(resolver_name):
    import aiohttp

    resolver = getattr(aiohttp, resolver_name)()
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=resolver, limit=0))

    async def ask(name, target):
        async with session.get(f'http://{name}:{PORT}{target}') as response:
            return json.loads(await response.read())

    return ask, session.close


USERS = {
    'lowhaio': use_lowhaio,
    'getaddrinfo': use_getaddrinfo,
    'threaded': functools.partial(use_aiohttp, 'ThreadedResolver'),
    'aiodns': functools.partial(use_aiohttp, 'AsyncResolver'),
}


def count_resources():
    """How many sockets of UDP this process has, and how many threads."""
    of_udp = {line.split()[9] for line in Path('/proc/net/udp').read_text().splitlines()[1:]}
    sockets = 0
    for entry in os.listdir('/proc/self/fd'):
        with contextlib.suppress(OSError):
            kind, _, inode = os.readlink(f'/proc/self/fd/{entry}').partition(':')
            sockets += kind == 'socket' and inode.strip('[]') in of_udp
    return sockets, len(os.listdir('/proc/self/task'))


async def run_client(client):
    ask, close = await USERS[client]()
    before = count_resources()
    most = [0, 0]
    is_over = threading.Event()

    def watch():
        while not is_over.wait(0.002):
            # But not this thread.
            now = count_resources()
            most[:] = max(most[0], now[0] - before[0]), max(most[1], now[1] - before[1] - 1)

    async def one(name, target='/'):
        try:
            async with asyncio.timeout(PATIENCE):
                return await ask(name, target)
        except Exception as error:
            return f'{type(error).__name__}: {error}'

    for line in sys.stdin:
        command = json.loads(line)
        is_over.clear()
        most[:] = 0, 0
        watcher = None
        if command.get('watch'):
            watcher = threading.Thread(target=watch)
            watcher.start()
        start = time.monotonic()
        names, target = command['names'], command.get('target', '/')
        if command.get('at once') and client == 'getaddrinfo':
            # A program would use threads. This many is what asyncio's own executor has.
            import concurrent.futures
            workers = min(32, (os.cpu_count() or 1) + 4)
            with concurrent.futures.ThreadPoolExecutor(workers) as executor:
                answers = list(executor.map(lambda name: asyncio.run(one(name)), names))
        elif command.get('at once'):
            answers = await asyncio.gather(*(one(name, target) for name in names))
        else:
            answers = [await one(name, target) for name in names]
        seconds = time.monotonic() - start
        if watcher:
            is_over.set()
            watcher.join()
        print(json.dumps([answers, seconds, most]), flush=True)
    await close()


class Client:
    def __init__(self, name):
        self.process = subprocess.Popen(
            [sys.executable, '-W', 'ignore', __file__, '--client', name],
            env={**os.environ, 'PYTHONPATH': str(HERE.parent)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.most = None

    def ask(self, *names, **options):
        self.process.stdin.write(json.dumps({'names': names, **options}) + '\n')
        self.process.stdin.flush()
        answers, seconds, self.most = json.loads(self.process.stdout.readline())
        return answers, seconds

    def close(self):
        self.process.stdin.close()
        self.process.wait(PATIENCE)
        self.process.stdout.close()


# The situations
# --------------

class Machine:
    """The files and the nameservers of a situation."""

    def __init__(self):
        self.nameservers = []

    def write(self, hosts=b'127.0.0.1 localhost\n', resolv_conf='nameserver 127.0.0.1\n'):
        # In place, because others are mounted there.
        Path('/etc/hosts').write_bytes(hosts)
        Path('/etc/resolv.conf').write_text(resolv_conf)

    def nameserver(self, address='127.0.0.1', **settings):
        nameserver = Nameserver(address)
        nameserver.records = {'a.test': {A: ['127.0.0.9']}, '*.many.test': {A: ['127.0.0.9']}}
        for name, setting in settings.items():
            setattr(nameserver, name, setting)
        self.nameservers.append(nameserver)
        return nameserver

    def close(self):
        for nameserver in self.nameservers:
            with contextlib.suppress(OSError):
                nameserver.close()


def plural(number, word):
    return f'{number} {word}' if number == 1 else f'{number} {word}s'


def queries_of(*nameservers):
    queries = [query for nameserver in nameservers for query in nameserver.queries]
    text = 'no query' if not queries else '1 query' if len(queries) == 1 else (
        f'{len(queries)} queries')
    if any(transport == 'TCP' for _, _, transport in queries):
        text += ', also by TCP'
    return text


def seconds_of(seconds):
    return f'{seconds:.1f} s' if seconds >= 0.05 else 'at once'


def words(answer):
    """An answer as a table shows it."""
    if isinstance(answer, str):
        text = ' '.join(answer.split()).replace('|', '/')
        for error, short in SHORT.items():
            if error in text:
                return short
        return f'`{text[:110]}`'
    if isinstance(answer[0], list):
        return ', '.join(dict.fromkeys(answer[0])) or 'nothing'
    return answer[0].removeprefix('::ffff:')


SHORT = {
    'Name or service not known': 'not found',
    'Domain name not found': 'not found',
    'there is no such name': 'not found',
    'Temporary failure in name resolution': 'temporary failure',
    'Timeout while contacting DNS servers': 'time-out',
}


def worked(answers):
    good = sum(not isinstance(answer, str) for answer in answers)
    if good == len(answers):
        return 'all work' if good > 1 else 'works'
    return f'{good} of {len(answers)} work' if good else (
        'fails' if len(answers) == 1 else 'all fail')


def first_error(answers):
    return next((f': {words(answer)}' for answer in answers if isinstance(answer, str)), '')


def hosts_case(machine, client):
    machine.write(hosts=b'127.0.0.7 MyHost\n')
    nameserver = machine.nameserver()
    answers, _ = client.ask('myhost', 'MYHOST')
    return f'{" and ".join(dict.fromkeys(map(words, answers)))}; {queries_of(nameserver)}'


def hosts_ipv6(machine, client):
    machine.write(hosts=b'::1 a.test\n')
    nameserver = machine.nameserver()
    answers, _ = client.ask('a.test')
    return f'{words(answers[0])}; {queries_of(nameserver)}'


def hosts_bad(machine, client):
    machine.write(hosts=b'\xef\xbb\xbf127.0.0.1 localhost\n127.1 x\n# caf\xe9\n127.0.0.7 good\n')
    machine.nameserver()
    answers, _ = client.ask('good', 'a.test')
    return f'{worked(answers)}{first_error(answers)}'


def localhost(machine, client):
    machine.write(hosts=b'')
    nameserver = machine.nameserver()
    answers, _ = client.ask('localhost', 'some.localhost')
    return f'{" and ".join(dict.fromkeys(map(words, answers)))}; {queries_of(nameserver)}'


def ttl_0(machine, client):
    machine.write()
    nameserver = machine.nameserver(ttl=0)
    answers, seconds = client.ask(*['a.test'] * 100)
    return f'{worked(answers)}; {queries_of(nameserver)}'


def changed_record(machine, client, target='/'):
    machine.write()
    nameserver = machine.nameserver(ttl=1)
    client.ask('a.test', target=target)
    nameserver.records['a.test'] = {A: ['127.0.0.10']}
    start = time.monotonic()
    while time.monotonic() - start < 20:
        answers, _ = client.ask('a.test', target=target)
        if words(answers[0]) == '127.0.0.10':
            seconds = time.monotonic() - start
            return f'followed {"after " * (seconds >= 0.05)}{seconds_of(seconds)}'
        time.sleep(0.02)
    return 'not followed in 20 s'


def slow(machine, client):
    machine.write()
    nameserver = machine.nameserver(delay=0.6)
    answers, seconds = client.ask('a.test')
    return f'{worked(answers)}{first_error(answers)}; {seconds_of(seconds)}, ' + queries_of(
        nameserver)


def lost(machine, client):
    machine.write()
    machine.nameserver(lost=1)
    answers, seconds = client.ask('a.test')
    return f'{worked(answers)}{first_error(answers)}; {seconds_of(seconds)}'


def first_dead(machine, client):
    machine.write(resolv_conf='nameserver 127.0.0.1\nnameserver 127.0.0.2\n')
    dead = machine.nameserver(silent=True)
    machine.nameserver('127.0.0.2')
    waits = []
    for number in range(3):
        answers, seconds = client.ask(f'{number}.many.test')
        waits.append(seconds_of(seconds) if not isinstance(answers[0], str) else words(answers[0]))
    return f'{", ".join(waits)}; {queries_of(dead)} to the dead one'


def first_refuses(machine, client):
    machine.write(resolv_conf='nameserver 127.0.0.3\nnameserver 127.0.0.2\n')
    machine.nameserver('127.0.0.2')
    waits = []
    for number in range(3):
        answers, seconds = client.ask(f'{number}.many.test')
        waits.append(seconds_of(seconds) if not isinstance(answers[0], str) else words(answers[0]))
    return ', '.join(waits)


def forty(machine, client):
    machine.write()
    nameserver = machine.nameserver()
    nameserver.records['forty.test'] = {A: [f'127.0.1.{last}' for last in range(1, 41)]}
    answers, seconds = client.ask(*['forty.test'] * 80, target='/close')
    asked = queries_of(nameserver)
    if isinstance(answers[0], str):
        return f'{worked(answers)}{first_error(answers)}'
    if isinstance(answers[0][0], list):
        nameserver.queries.clear()
        answers, _ = client.ask('forty.test')
        return f'{len(set(answers[0][0]))} addresses; {queries_of(nameserver)}'
    return f'{len({answer[0] for answer in answers})} addresses used; {asked}'


def chain(machine, client):
    machine.write()
    nameserver = machine.nameserver()
    for number in range(10):
        target = f'alias{number + 1}.test' if number < 9 else 'a.test'
        nameserver.records[f'alias{number}.test'] = {CNAME: [target]}
    answers, seconds = client.ask('alias0.test')
    return f'{worked(answers)}{first_error(answers)}; {queries_of(nameserver)}'


KUBERNETES = ('nameserver 127.0.0.1\nsearch default.svc.cluster.test svc.cluster.test '
              'cluster.test\noptions ndots:5\n')


def search_short(machine, client):
    machine.write(resolv_conf=KUBERNETES)
    nameserver = machine.nameserver()
    nameserver.records['api.default.svc.cluster.test'] = {A: ['127.0.0.9']}
    answers, _ = client.ask('api')
    return f'{worked(answers)}{first_error(answers)}; {queries_of(nameserver)}'


def search_external(machine, client):
    machine.write(resolv_conf=KUBERNETES)
    nameserver = machine.nameserver()
    answers, _ = client.ask('a.test')
    return f'{worked(answers)}{first_error(answers)}; {queries_of(nameserver)}'


def resolv_conf_changes(machine, client):
    machine.write()
    old = machine.nameserver()
    machine.nameserver('127.0.0.2')
    client.ask('1.many.test')
    machine.write(resolv_conf='nameserver 127.0.0.2\n')
    old.silent = True
    old.queries.clear()
    answers, seconds = client.ask('2.many.test')
    return (f'{worked(answers)}{first_error(answers)}; {seconds_of(seconds)}, '
            f'{queries_of(old)} to the old one')


def down_at_ttl_end(machine, client):
    machine.write()
    nameserver = machine.nameserver(ttl=1)
    client.ask('a.test')
    nameserver.silent = True
    # Time has to pass here: what is told is what happens after it.
    time.sleep(1.2)
    answers, seconds = [], []
    for _ in range(3):
        answer, waited = client.ask('a.test')
        answers += answer
        seconds.append(waited)
    return f'{worked(answers)}{first_error(answers)}; {", ".join(map(seconds_of, seconds))}'


def turning(machine, client):
    machine.write()
    nameserver = machine.nameserver(ttl=1, turning=8)
    nameserver.records['fifty.test'] = {A: [f'127.0.1.{last}' for last in range(1, 51)]}
    connections = set()
    start = time.monotonic()
    number = 0
    while time.monotonic() - start < 6:
        answers, _ = client.ask('fifty.test')
        number += 1
        if isinstance(answers[0], str):
            return words(answers[0])
        if isinstance(answers[0][0], list):
            return 'makes none'
        connections.add(tuple(answers[0]))
        time.sleep(0.25)
    return f'{plural(len(connections), "connection")} for {number} requests in 6 s'


def only_aaaa_works(machine, client):
    machine.write()
    nameserver = machine.nameserver(failing=(A,))
    nameserver.records['six.test'] = {AAAA: ['fd00::9']}
    answers, seconds = client.ask('six.test')
    return f'{worked(answers)}{first_error(answers)}; {seconds_of(seconds)}, ' + queries_of(
        nameserver)


def missing(machine, client):
    machine.write()
    nameserver = machine.nameserver()
    answers, seconds = client.ask(*['missing.test'] * 100)
    return f'{words(answers[0])}; {queries_of(nameserver)}'


def many(machine, client):
    machine.write()
    machine.nameserver(delay=0.05)
    names = [f'{number}.many.test' for number in range(500)]
    answers, seconds = client.ask(*names, **{'at once': True, 'watch': True})
    sockets, threads = client.most
    return (f'{worked(answers)}{first_error(answers)}; {seconds_of(seconds)}; '
            f'{plural(sockets, "socket")} of UDP, {plural(threads, "thread")}')


SITUATIONS = {
    'hosts has `MyHost`; asked for `myhost` and `MYHOST`': hosts_case,
    'hosts has only `::1` for a name that has an A record': hosts_ipv6,
    'hosts has a BOM, a line `127.1 x` and a comment in Latin-1': hosts_bad,
    '`localhost` and `some.localhost`, with an empty hosts file': localhost,
    'TTL 0, 100 requests one after the other': ttl_0,
    'TTL 1, the record changes, a connection is kept': changed_record,
    'TTL 1, the record changes, each request connects': functools.partial(
        changed_record, target='/close'),
    'the nameserver answers after 0.6 s': slow,
    'the first query is lost': lost,
    'the first nameserver is silent; three names': first_dead,
    'the first nameserver refuses; three names': first_refuses,
    '40 addresses': forty,
    'ten aliases in one answer': chain,
    'Kubernetes, `ndots:5` and three domains: a short name': search_short,
    'Kubernetes: a name outside the cluster': search_external,
    'resolv.conf changes, the old nameserver is silent': resolv_conf_changes,
    'TTL 1, then the nameserver is silent; three requests': down_at_ttl_end,
    'TTL 1, each answer has other 8 of 50 addresses': turning,
    'SERVFAIL for A, an address for AAAA': only_aaaa_works,
    'NXDOMAIN, asked for 100 times': missing,
    '500 names at once, each answered after 50 ms': many,
}


# All together
# ------------

def bind_mount(directory):
    for name, content in {
            'hosts': '', 'resolv.conf': '', 'nsswitch.conf': 'hosts: files dns\n'}.items():
        path = Path(directory, name)
        path.write_text(content)
        subprocess.run(['mount', '--bind', path, f'/etc/{name}'], check=True)
    # A machine that has IPv4 and IPv6. One that has only loopback addresses is special to some.
    for address in '10.9.9.9/32', 'fd00::9/128':
        subprocess.run(['ip', 'addr', 'add', address, 'dev', 'lo'], check=True)
    subprocess.run(['ip', 'link', 'set', 'lo', 'up'], check=True)


def inside(args):
    with tempfile.TemporaryDirectory() as directory:
        bind_mount(directory)
        threading.Thread(target=asyncio.run, args=(serve_http(),), daemon=True).start()
        rows = []
        for title, situation in SITUATIONS.items():
            if args.only and not any(part in title for part in args.only.split(',')):
                continue
            cells = []
            for name in args.clients.split(','):
                machine = Machine()
                machine.write()
                client = Client(name)
                try:
                    cells.append(situation(machine, client))
                except Exception as error:
                    cells.append(f'failed here: {error!r}')
                    client.process.kill()
                finally:
                    with contextlib.suppress(OSError):
                        client.close()
                    machine.close()
            rows.append([title, *cells])
            print(f'{title}\n  ' + '\n  '.join(cells), file=sys.stderr)
    print(table([['situation', *(CLIENTS[name] for name in args.clients.split(','))], *rows]))


def table(rows):
    lines = ['| ' + ' | '.join(row) + ' |' for row in rows]
    lines.insert(1, '|' + ' --- |' * len(rows[0]))
    return '\n'.join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--only', help='parts of the names of situations, with commas')
    parser.add_argument('--clients', default=','.join(CLIENTS))
    parser.add_argument('--cache', type=Path, default=HERE / '.cache' / 'names')
    parser.add_argument('--inside', action='store_true', help=argparse.SUPPRESS)
    parser.add_argument('--client', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client:
        return asyncio.run(run_client(args.client))
    if args.inside:
        return inside(args)
    python = args.cache / 'bin' / 'python'
    if not python.exists():
        venv.create(args.cache, with_pip=True, symlinks=True)
    subprocess.run([python, '-m', 'pip', 'install', '-q', '--disable-pip-version-check',
                    *PACKAGES], check=True)
    versions = subprocess.run(
        [python, '-c', 'import aiohttp, aiodns, pycares; print(aiohttp.__version__, '
         'aiodns.__version__, pycares.__version__, pycares.ARES_VERSION)'],
        check=True, capture_output=True, text=True).stdout.split()
    print('aiohttp {}, aiodns {}, pycares {} (c-ares {})'.format(*versions), end=', ')
    print(*platform.libc_ver(), end=f', CPython {platform.python_version()}, ')
    print(f'Linux {platform.release()}')
    print(time.strftime('%Y-%m-%d'), flush=True)
    how = ['unshare', '--net', '--mount', *([] if os.geteuid() == 0 else ['--map-root-user'])]
    return subprocess.run(
        [*how, python, '-W', 'ignore', __file__, '--inside', '--clients', args.clients,
         *(['--only', args.only] if args.only else [])], check=True).returncode


if __name__ == '__main__':
    sys.exit(main())
