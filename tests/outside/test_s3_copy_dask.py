"""examples/s3_copy_dask.py, run as a person runs it, with processes that are killed."""

import argparse
import asyncio
import contextlib
import itertools
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import cloudpickle
import psutil
import pytest
import s3_servers
from distributed import Client

from tests.outside.test_examples import (
    CONTENTS,
    ENVIRONMENT,
    ROOT,
    Scripted,
    read,
    read_head,
    write,
)

KEYS = {'AWS_ACCESS_KEY_ID': 'AKID', 'AWS_SECRET_ACCESS_KEY': 'secret'}
# So that a hang is a failure. Several processes have to start, and one of them twice.
PATIENCE = 300


@pytest.fixture
def rclone(tmp_path):
    """The URL of a server that verifies signatures, with the buckets `one` and `two`."""
    directory = tmp_path / 'rclone'
    directory.mkdir()
    with s3_servers.rclone(
            directory, '--auth-key', 'AKID,secret', '--auth-key', 'OTHER,secret') as server:
        for name in ('one', 'two'):
            (directory / 'data' / name).mkdir()
        yield server.url


@pytest.fixture
def folder(rclone, tmp_path):
    """Where its buckets are."""
    return tmp_path / 'rclone' / 'data'


class Relay(Scripted):
    """Passes everything on to a server. `on_request` of the first line, the fields and the port of
    the client is called before a request is passed on."""

    def __init__(self, url, on_request):
        super().__init__(self.pass_on)
        self.address = ('127.0.0.1', int(url.rpartition(':')[2]))
        self.on_request = on_request

    def pass_on(self, conn, file):
        with socket.create_connection(self.address) as upstream:
            thread = threading.Thread(target=self.pass_back, args=(upstream, conn))
            thread.start()
            while (head := read_head(file)) is not None:
                line, fields = head
                length = int(dict(fields).get('content-length', 0))
                self.on_request(line, dict(fields), conn.getpeername()[1])
                lines = (line, *(f'{name}: {value}' for name, value in fields), '', '')
                upstream.sendall('\r\n'.join(lines).encode('latin-1') + file.read(length))
            upstream.shutdown(socket.SHUT_WR)
            thread.join()

    @staticmethod
    def pass_back(upstream, conn):
        try:
            while data := upstream.recv(65536):
                conn.sendall(data)
        except OSError:
            pass


class Running:
    """The program, which has its own standard error, and is ended with all that it started."""

    def __init__(self, url, *args, **environment):
        self.args = [sys.executable, ROOT / 'examples' / 's3_copy_dask.py', '--endpoint-url', url,
                     *args]
        self.environment = {**ENVIRONMENT, **KEYS, **environment}

    def __enter__(self):
        self.process = subprocess.Popen(
            self.args, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True)
        return self

    def __exit__(self, *exception):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def result(self):
        printed, said = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, printed, said

    def worker_at(self, port):
        """The process that has a connection from this port."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            if any(conn.laddr.port == port for conn in child.net_connections()):
                return child
        raise LookupError(f'no process has a connection from port {port}')


def s3_copy_dask(url, *args, **environment):
    with Running(url, *args, **environment) as running:
        return running.result()


def test_a_worker_that_is_killed_loses_nothing(folder, rclone):
    def kill_one(line, fields, port):
        if line.startswith('PUT /two/'):
            with lock:
                asked.append(line)
                if len(asked) == 40:
                    running.worker_at(port).kill()

    lock, asked = threading.Lock(), []
    contents = {f'{number % 7}/file {number}': b'%d' % number for number in range(200)}
    write(folder / 'one', contents)
    with Relay(rclone, kill_one) as relay, Running(
            relay.origin, '--workers', '2', '--concurrency', '4', 's3://one',
            's3://two') as running:
        code, printed, said = running.result()
    assert (code, printed) == (0, '200 copied, 0 skipped, 0 failed\n'), said
    assert read(folder / 'two') == contents
    assert 'Restarting worker' in said
    # What had arrived was not copied again. Of the rest, all that was on its way may have been.
    assert len(set(asked)) == 200
    assert len(asked) <= 200 + 4


def test_a_worker_that_is_killed_while_it_downloads(folder, rclone, tmp_path):
    def kill_one(line, fields, port):
        if line.startswith('GET /one/'):
            with lock:
                asked.append(line)
                if len(asked) == 40:
                    running.worker_at(port).kill()

    lock, asked = threading.Lock(), []
    contents = {f'{number % 7}/file {number}': b'%d' % number for number in range(200)}
    write(folder / 'one', contents)
    with Relay(rclone, kill_one) as relay, Running(
            relay.origin, '--workers', '2', '--concurrency', '4', 's3://one',
            tmp_path / 'to') as running:
        code, printed, said = running.result()
    assert (code, printed) == (0, '200 copied, 0 skipped, 0 failed\n'), said
    copied = read(tmp_path / 'to')
    # What the dead worker was writing has not got its name, and is not touched by others.
    assert {name: content for name, content in copied.items()
            if not name.endswith('.part')} == contents
    assert len(asked) <= 200 + 4


def test_an_interrupt_ends_all_processes(folder, rclone, tmp_path):
    def interrupt(line, fields, port):
        if line.startswith('GET /one/'):
            with lock:
                if not workers:
                    workers.extend(psutil.Process(running.process.pid).children(recursive=True))
                    # As a terminal does it: the workers get it too.
                    os.killpg(running.process.pid, signal.SIGINT)
            ended.wait(PATIENCE)

    lock, workers, ended = threading.Lock(), [], threading.Event()
    write(folder / 'one', {f'file {number}': b'x' for number in range(100)})
    with Relay(rclone, interrupt) as relay, Running(
            relay.origin, '--workers', '2', 's3://one', tmp_path / 'to') as running:
        try:
            code, printed, said = running.result()
        finally:
            ended.set()
    assert (code, printed) == (130, '')
    assert said.endswith('Interrupted: what has been copied stays\n')
    assert 'Traceback' not in said
    psutil.wait_procs(workers, PATIENCE)
    assert not any(worker.is_running() for worker in workers)
    # The files that were being written are gone.
    assert read(tmp_path / 'to') == {}


# -------------------------------------------------------------------- a cluster that runs already

@pytest.fixture(scope='module')
def scheduler(tmp_path_factory):
    """The address of a cluster with two workers, which have other keys, and not the examples."""
    folder = tmp_path_factory.mktemp('cluster')
    environment = {**ENVIRONMENT, **KEYS, 'AWS_ACCESS_KEY_ID': 'OTHER', 'PYTHONWARNINGS': ''}
    with contextlib.ExitStack() as stack:
        def start(*args):
            process = stack.enter_context(subprocess.Popen(
                [sys.executable, '-m', 'dask', *args], cwd=folder, env=environment,
                stderr=subprocess.PIPE, text=True))
            for line in process.stderr:
                if match := re.search('(?:Scheduler at|Registered to): +(tcp://[0-9.:]+)', line):
                    break
            # Or its log fills the pipe, and it waits.
            thread = threading.Thread(target=process.stderr.read)
            thread.start()
            stack.callback(thread.join)
            stack.callback(process.terminate)
            return match[1]

        address = start('scheduler', '--host', '127.0.0.1', '--port', '0',
                        '--dashboard-address', '127.0.0.1:0')
        start('worker', address, '--nworkers', '2', '--nthreads', '2', '--no-dashboard')
        yield address


def test_there_and_back(folder, rclone, scheduler, tmp_path):
    def note(line, fields, port):
        key_id = re.search('Credential=([A-Z]+)/', fields['authorization'])[1]
        asked.add((key_id, line[:3], 'start-after' in line))

    asked = set()
    source, target = tmp_path / 'source', tmp_path / 'target'
    contents = {**CONTENTS, 'in parts': bytes(range(256)) * 2 ** 16 + b'more'}
    write(source, contents)
    with Relay(rclone, note) as relay:
        for places in ((source, 's3://one/a folder'), ('s3://one/a folder', 's3://two/'),
                       ('s3://two', target)):
            code, printed, said = s3_copy_dask(
                relay.origin, '--scheduler', scheduler, *places)
            assert (code, printed) == (0, '8 copied, 0 skipped, 0 failed\n'), said
            assert '100%' in said
            assert re.search(r'\n23\.\d MB in [\d.]+ s: [\d.]+ MB/s, \d+ files/s\n$', said)
    assert read(target) == contents
    # The client lists with its keys, and the workers, which ask what is there already, do the
    # rest with theirs.
    assert asked == {('AKID', 'GET', False), ('OTHER', 'GET', True), ('OTHER', 'PUT', False),
                     ('OTHER', 'POS', False), ('OTHER', 'GET', False)}
    (target / 'empty').unlink()
    assert s3_copy_dask(rclone, '--scheduler', scheduler, 's3://two', target)[:2] == (
        0, '1 copied, 7 skipped, 0 failed\n')
    assert read(target) == contents


def test_a_file_that_fails_is_reported(folder, rclone, scheduler, tmp_path):
    write(tmp_path / 'source', {'good': b'1', 'bad \udcff': b'2'})
    code, printed, said = s3_copy_dask(
        rclone, '--scheduler', scheduler, tmp_path / 'source', 's3://one')
    assert (code, printed) == (1, '1 copied, 0 skipped, 1 failed\n')
    assert r"'bad \udcff': UnicodeEncodeError: 'utf-8' codec can't encode" in said
    assert read(folder / 'one') == {'good': b'1'}


def test_a_batch_that_fails_is_reported(folder, rclone, scheduler):
    """Only the workers ask what comes after a key. Here they never get an answer to that."""
    def hang_up(line, fields, port):
        if 'start-after' in line:
            raise OSError

    write(folder / 'one', {f'file {number}': b'x' for number in range(7)})
    with Relay(rclone, hang_up) as relay:
        code, printed, said = s3_copy_dask(
            relay.origin, '--scheduler', scheduler, 's3://one', 's3://two/to')
    assert (code, printed) == (1, '0 copied, 0 skipped, 7 failed\n')
    assert "'file 0 to file 6': HttpConnectionClosedError: GET http://127.0.0.1" in said
    assert read(folder / 'two') == {}


def test_two_copies_with_one_cluster(folder, rclone, scheduler):
    contents = {f'file {number}': b'x' for number in range(300)}
    write(folder / 'one', contents)
    with Running(rclone, '--scheduler', scheduler, 's3://one', 's3://two/a') as first, \
            Running(rclone, '--scheduler', scheduler, 's3://one', 's3://two/b') as second:
        for running in (first, second):
            assert running.result()[:2] == (0, '300 copied, 0 skipped, 0 failed\n')
    assert read(folder / 'two') == {f'{name}/{key}': b'x' for name in 'ab' for key in contents}


def test_an_interrupt_ends_what_the_workers_do(folder, rclone, scheduler, tmp_path):
    def interrupt(line, fields, port):
        if line.startswith('GET /one/'):
            with lock:
                asked.append(line)
                if len(asked) == 1:
                    running.process.send_signal(signal.SIGINT)
            ended.wait(PATIENCE)

    lock, asked, ended = threading.Lock(), [], threading.Event()
    write(folder / 'one', {f'file {number}': b'x' for number in range(300)})
    with Relay(rclone, interrupt) as relay, Running(
            relay.origin, '--scheduler', scheduler, '--concurrency', '4', 's3://one',
            tmp_path / 'to') as running:
        try:
            code, printed, said = running.result()
        finally:
            ended.set()
        assert (code, printed) == (130, '')
        with Client(scheduler) as client:
            while any(client.processing().values()):
                time.sleep(0.01)
            plugins = client.run(lambda dask_worker: list(dask_worker.plugins)).values()
    assert not any(name.startswith('s3_copy') for names in plugins for name in names)
    # Only what each of the two workers had begun.
    assert len(asked) <= 2 * 4
    assert read(tmp_path / 'to') == {}


def test_without_a_scheduler(rclone, tmp_path):
    with socket.socket() as sock:  # bound, and not listening
        sock.bind(('127.0.0.1', 0))
        address = f'tcp://127.0.0.1:{sock.getsockname()[1]}'
        code, printed, said = s3_copy_dask(
            rclone, '--scheduler', address, 's3://one', tmp_path,
            DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT='1s')
    assert (code, printed) == (1, '')
    assert f'OSError: Timed out trying to connect to {address}' in said
    assert 'Traceback' not in said


# ----------------------------------------------------------------------------------- its batches

@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'examples')
    import s3_copy_dask
    return s3_copy_dask


async def listed(example, sizes):
    for number, size in enumerate(sizes):
        yield example.File(f'{number:07}', size, 0.0)


@pytest.mark.parametrize('sizes, least, most', [
    ([1], 1, 1),
    ([0] * 32, 1, 1),
    ([0] * 33, 2, 2),
    ([1] * 10_000, 200, 400),
    ([100_000] * 200_000, 500, 1000),
    ([2 ** 25] * 10_000, 500, 1000),
    ([2 ** 40] * 300, 300, 300),
])
def test_there_are_hundreds_of_batches(example, sizes, least, most):
    async def collect():
        return [batch async for batch in example.batches(listed(example, sizes))]

    batches = asyncio.run(collect())
    assert least <= len(batches) <= most
    assert [file.size for _, files in batches for file in files] == sizes
    assert [after for after, _ in batches] == [
        '', *(files[-1].name for _, files in batches[:-1])]
    assert max(len(files) for _, files in batches) <= 1000
    assert all(len(files) == 1 or sum(file.size for file in files) <= 2 ** 30
               for _, files in batches)


def test_the_listing_waits_for_the_workers(example):
    """However many files there are, so many batches are known at once, and no more."""
    async def endless():
        for number in itertools.count():
            taken.append(number)
            yield '', [example.File(str(number), 1, 0.0)]

    async def main():
        # There is no plugin of this name, and no worker that could tell.
        async with Client(n_workers=0, processes=False, asynchronous=True,
                          dashboard_address='127.0.0.1:0') as client:
            copying = asyncio.create_task(example.copy_batches(
                client, 'nobody', endless(), example.Summary()))
            while len(client.futures) < example.AHEAD:
                await asyncio.sleep(0.01)
            for _ in range(100):
                await asyncio.sleep(0)
            assert len(client.futures) == example.AHEAD
            copying.cancel()
            await asyncio.wait([copying])
            assert copying.cancelled()

    taken = []
    asyncio.run(main())
    assert len(taken) == example.AHEAD + 1


def test_what_is_sent_to_the_workers(example, monkeypatch):
    """The arguments, and no file, pool or key."""
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'top-secret')
    args = {'source': ('one', ''), 'target': ('two', ''), 'region': 'us-east-1',
            'endpoint_url': 'http://127.0.0.1', 'profile': None, 'concurrency': 3}
    sent = cloudpickle.dumps(example.Copying(argparse.Namespace(**args)))
    assert b'top-secret' not in sent
    assert vars(pickle.loads(sent).args) == args
