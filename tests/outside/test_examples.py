"""The programs in examples/, run as a person runs them, against servers of this machine.

What the quickstart does is in test.py.
"""

import ast
import contextlib
import gzip
import hashlib
import json
import os
import pathlib
import queue
import random
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request

import pytest
import trustme

ROOT = pathlib.Path(__file__).parents[2]
LAYERS = sorted({path.parent for path in ROOT.glob('layers/*/lowhaio_*.py')})
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items()
       if not name.startswith('AWS_') and not name.lower().endswith('_proxy')},
    'PYTHONPATH': os.pathsep.join(map(str, (ROOT, *LAYERS))),
    'PYTHONWARNINGS': 'error',
}

# A shell ignores interrupts for what it starts in the background. The programs are not to.
signal.signal(signal.SIGINT, signal.default_int_handler)

# So that a hang is a failure. Nothing waits for it to pass.
PATIENCE = 60


def run(example, *args, **environment):
    """The exit code, what it printed, and what it said on standard error."""
    ended = subprocess.run(
        [sys.executable, ROOT / 'examples' / example, *args], capture_output=True, check=False,
        text=True, timeout=PATIENCE, env={**ENVIRONMENT, **environment})
    assert 'Traceback' not in ended.stderr
    assert 'Warning' not in ended.stderr
    return ended.returncode, ended.stdout, ended.stderr


class Scripted:
    """A server on a port of its own. Each connection runs the script, in a thread."""

    def __init__(self, script, context=None):
        self.script = script
        self.context = context
        self.listener = socket.create_server(('127.0.0.1', 0))
        self.origin = f'http://127.0.0.1:{self.listener.getsockname()[1]}'
        self.conns = []
        self.threads = [threading.Thread(target=self.accept)]
        self.failures = []

    def __enter__(self):
        self.threads[0].start()
        return self

    def __exit__(self, kind, error, traceback):
        # On Linux, closing the listener would not wake its thread.
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for conn in self.conns:
            with contextlib.suppress(OSError):
                conn.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(PATIENCE)
        if error is None and self.failures:
            raise self.failures[0]

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                conn, _ = self.listener.accept()
                self.conns.append(conn)
                thread = threading.Thread(target=self.serve, args=(conn,))
                self.threads.append(thread)
                thread.start()

    def serve(self, conn):
        try:
            conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.context is not None:
                conn = self.context.wrap_socket(conn, server_side=True)
            with conn, conn.makefile('rb') as file:
                self.script(conn, file)
        except OSError:
            pass  # the other end hung up
        except BaseException as error:
            self.failures.append(error)
        finally:
            conn.close()


def read_head(file):
    """The first line and the fields, as text; None if the connection ends before."""
    lines = []
    while (line := file.readline()) != b'\r\n':
        if not line:
            return None
        lines.append(line.decode('latin-1').strip())
    fields = [line.split(': ', 1) for line in lines[1:]]
    return lines[0], [(name.lower(), value) for name, value in fields]


def test_each_example_tells_how_it_is_used():
    for path in (ROOT / 'examples').glob('*.py'):
        code, printed, said = run(path.name, '--help')
        assert (code, said) == (0, '')
        assert f'python examples/{path.name}' in printed


# ------------------------------------------------------------------------------ s3_copy.py

EMPTY_LISTING = b'HTTP/1.1 200 OK\r\ncontent-length: 19\r\n\r\n<ListBucketResult/>'

# As odd as names of files and keys can be.
CONTENTS = {
    'plain.txt': b'hello',
    'empty': b'',
    'a b+c%20d&e=f.txt': b'1',
    'é/ሴ😀/"<>\'`^{|}[]\\': b'22',
    'deep/~!$()*,;:@/..x': b'333',
    'control\x01\x7f': b'4444',
    'large': bytes(range(256)) * 25000,  # more than 5 MiB
}


@pytest.fixture(scope='module')
def s3():
    """The URL of moto's server."""
    with subprocess.Popen(
            [sys.executable, '-c', 'from moto.server import main; main(["-p", "0"])'],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            for line in process.stdout:
                if match := re.search(r'Running on (http://\S+)', line):
                    break
            # Or its log fills the pipe, and it waits.
            thread = threading.Thread(target=process.stdout.read)
            thread.start()
            yield match[1]
        finally:
            process.kill()
            thread.join()


@pytest.fixture
def bucket(s3):
    ask(f'{s3}/bucket', method='PUT')
    yield f'{s3}/bucket'
    ask(f'{s3}/moto-api/reset', method='POST')


def ask(url, content=None, method='GET'):
    # moto does not look at the signature, but wants one.
    request = urllib.request.Request(url, content, method=method, headers={
        'authorization': 'AWS4-HMAC-SHA256 Credential=AKID/20200101/us-east-1/s3/aws4_request, '
                         'SignedHeaders=host, Signature=0',
        'content-type': 'application/octet-stream'})
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        return response.read()


def put_key(bucket, key, content):
    ask(f'{bucket}/{urllib.parse.quote(key)}', content, 'PUT')


def get_key(bucket, key):
    return ask(f'{bucket}/{urllib.parse.quote(key)}')


def write(folder, contents):
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        # Before what is copied now, however coarse the clock of the server is.
        os.utime(path, (1_600_000_000, 1_600_000_000))


def read(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob('*') if path.is_file()}


def s3_copy(s3, *args, **environment):
    return run('s3_copy.py', *args, **{
        'AWS_ACCESS_KEY_ID': 'AKID', 'AWS_SECRET_ACCESS_KEY': 'secret', 'AWS_ENDPOINT_URL': s3,
        **environment})


@pytest.mark.parametrize('place, prefix', [
    ('s3://bucket', ''),
    ('s3://bucket/a folder', 'a folder/'),
    ('s3://bucket/odd//prefix/+/', 'odd//prefix/+/'),
])
def test_s3_copy_there_and_back(s3, bucket, tmp_path, place, prefix):
    source, target = tmp_path / 'source', tmp_path / 'target'
    write(source, CONTENTS)
    code, printed, said = s3_copy(s3, source, place)
    assert (code, printed) == (0, '7 copied, 0 skipped, 0 failed\n'), said
    assert '100%' in said
    for name, content in CONTENTS.items():
        assert get_key(bucket, prefix + name) == content

    assert s3_copy(s3, place, target)[:2] == (0, '7 copied, 0 skipped, 0 failed\n')
    assert read(target) == CONTENTS
    # As a file is that any program makes.
    assert (target / 'empty').stat().st_mode == (source / 'empty').stat().st_mode


def test_s3_copy_within_s3(s3, bucket):
    ask(f'{s3}/other', method='PUT')
    for name, content in CONTENTS.items():
        put_key(bucket, f'from//+/{name}', content)
    assert s3_copy(s3, 's3://bucket/from//+', 's3://other/to')[:2] == (
        0, '7 copied, 0 skipped, 0 failed\n')
    for name, content in CONTENTS.items():
        assert get_key(f'{s3}/other', 'to/' + name) == content
    assert s3_copy(s3, 's3://bucket/from//+', 's3://other/to')[:2] == (
        0, '0 copied, 7 skipped, 0 failed\n')


def test_s3_copy_skips_what_is_the_same(s3, bucket, tmp_path):
    source, target = tmp_path / 'source', tmp_path / 'target'
    write(source, {'same': b'1', 'newer': b'1', 'longer': b'1'})
    s3_copy(s3, source, 's3://bucket')
    write(source, {'longer': b'12'})
    (source / 'newer').write_bytes(b'2')
    os.utime(source / 'newer', (4_000_000_000, 4_000_000_000))
    assert s3_copy(s3, source, 's3://bucket')[:2] == (0, '2 copied, 1 skipped, 0 failed\n')
    assert get_key(bucket, 'newer') == b'2'
    assert get_key(bucket, 'longer') == b'12'

    assert s3_copy(s3, 's3://bucket', target)[:2] == (0, '3 copied, 0 skipped, 0 failed\n')
    write(target, {'same': b'x'})
    assert s3_copy(s3, 's3://bucket', target)[:2] == (0, '1 copied, 2 skipped, 0 failed\n')
    assert read(target) == {'same': b'1', 'newer': b'2', 'longer': b'12'}


@contextlib.contextmanager
def between(s3, answer):
    """The URL of a server that asks `s3`, and the lines that it was asked. `answer` of a line may
    be the bytes that are sent instead, or the target that is asked for."""
    lines = []

    def script(conn, file):
        while (head := read_head(file)) is not None:
            line, fields = head
            lines.append(line)
            content = file.read(int(dict(fields).get('content-length', 0)))
            response = answer(line)
            if isinstance(response, bytes):
                conn.sendall(response)
                if b'connection: close' in response:
                    return
                continue
            method, target, _ = line.split(' ')
            request = urllib.request.Request(
                s3 + (response or target), content or None, method=method,
                headers={'content-type': 'application/octet-stream', **dict(fields)})
            with urllib.request.urlopen(request, timeout=PATIENCE) as upstream:
                content = upstream.read()
                kept = ''.join(f'{name}: {value}\r\n' for name, value in upstream.headers.items()
                               if name.lower() in ('content-range', 'etag')).encode()
                conn.sendall(b'HTTP/1.1 %d \r\ncontent-length: %d\r\n%b\r\n%b' % (
                    upstream.status, len(content), kept, content))

    with Scripted(script) as server:
        yield server.origin, lines


def test_s3_copy_lists_all_pages(s3, bucket, tmp_path):
    def two_at_once(line):
        target = line.split(' ')[1]
        return target.replace('max-keys=1000', 'max-keys=2') if 'list-type' in target else None

    contents = {f'{number} +&=': b'x' for number in range(5)}
    for name, content in contents.items():
        put_key(bucket, name, content)
    with between(s3, two_at_once) as (url, lines):
        assert s3_copy(url, 's3://bucket', tmp_path)[:2] == (
            0, '5 copied, 0 skipped, 0 failed\n')
    assert len([line for line in lines if 'list-type' in line]) == 3
    assert read(tmp_path) == contents


def test_s3_copy_goes_on_after_a_file_that_fails(s3, bucket, tmp_path):
    write(tmp_path, CONTENTS)
    (tmp_path / 'broken').symlink_to(tmp_path / 'nowhere')
    denied = b'<Error><Code>AccessDenied</Code><Message>No &amp; no</Message></Error>'

    def deny_one(line):
        if line.startswith('PUT /bucket/plain.txt '):
            return b'HTTP/1.1 403 No\r\ncontent-length: %d\r\n\r\n%b' % (len(denied), denied)
        return None

    with between(s3, deny_one) as (url, _):
        code, printed, said = s3_copy(url, tmp_path, 's3://bucket')
    assert (code, printed) == (1, '6 copied, 0 skipped, 2 failed\n')
    assert "'plain.txt': S3Error: S3 answered 403 AccessDenied: No & no (PUT in bucket" in said
    assert f"'{tmp_path}/broken': FileNotFoundError" in said
    assert get_key(bucket, 'large') == CONTENTS['large']


def test_s3_copy_retries(s3, bucket, tmp_path):
    """What is answered with 503, and what breaks off in the middle."""
    put_key(bucket, 'key', b'12345')
    wrong = [b'HTTP/1.1 503 Slow Down\r\ncontent-length: 0\r\n\r\n',
             b'HTTP/1.1 200 OK\r\nconnection: close\r\netag: "%b"\r\ncontent-length: 5\r\n\r\n12'
             % hashlib.md5(b'12345').hexdigest().encode()]

    def wrong_first(line):
        return wrong.pop() if line.startswith('GET /bucket/key ') and wrong else None

    with between(s3, wrong_first) as (url, _):
        assert s3_copy(url, 's3://bucket', tmp_path)[:2] == (
            0, '1 copied, 0 skipped, 0 failed\n')
    assert wrong == []
    assert read(tmp_path) == {'key': b'12345'}


def test_s3_copy_leaves_no_part_of_a_file(s3, bucket, tmp_path):
    put_key(bucket, 'key', b'12345')
    write(tmp_path, {'key': b'before'})

    def breaks_off(line):
        return (b'HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\n1234'
                if line.startswith('GET /bucket/key ') else None)

    with between(s3, breaks_off) as (url, _):
        code, printed, said = s3_copy(url, 's3://bucket', tmp_path)
    assert (code, printed) == (1, '0 copied, 0 skipped, 1 failed\n')
    assert "'key': HttpConnectionClosedError: GET http://127.0.0.1" in said
    assert read(tmp_path) == {'key': b'before'}


def test_s3_copy_stays_in_the_folder(s3, bucket, tmp_path):
    outside, target = tmp_path / 'outside', tmp_path / 'target'
    outside.mkdir()
    target.mkdir()
    (target / 'link').symlink_to(outside)
    wrong = ['../outside/a', 'a/../../outside/b', '/c', 'a//d', './e', 'link/f', 'a/..']
    entries = ''.join(
        f'<Contents><Key>{urllib.parse.quote(key)}</Key><Size>1</Size>'
        '<LastModified>2020-01-01T00:00:00.000Z</LastModified></Contents>'
        for key in [*wrong, 'good', 'folder/'])
    listing = ('<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
               f'<EncodingType>url</EncodingType>{entries}</ListBucketResult>').encode()

    def answer(line):
        content = listing if 'list-type' in line else b'x'
        return b'HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b' % (len(content), content)

    with between(s3, answer) as (url, _):
        code, printed, said = s3_copy(url, 's3://bucket', target)
    assert (code, printed) == (1, '1 copied, 0 skipped, 7 failed\n')
    for key in wrong:
        assert f'{key!r}: ValueError: its key is no path in the folder\n' in said
    assert read(tmp_path) == {'target/good': b'x'}
    assert (target / 'good').stat().st_mtime == 1577836800


def test_s3_copy_reports_the_late_error_of_a_copy(s3, bucket):
    put_key(bucket, 'key', b'x')
    late = b'<?xml version="1.0"?>\n<Error><Code>InternalError</Code></Error>'

    def answer(line):
        if line.startswith('PUT /bucket/b/key '):
            return b'HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b' % (len(late), late)
        return None

    with between(s3, answer) as (url, _):
        code, printed, said = s3_copy(url, 's3://bucket', 's3://bucket/b')
    assert (code, printed) == (1, '0 copied, 0 skipped, 1 failed\n')
    assert "'key': S3Busy: S3 answered 200 InternalError (PUT in bucket" in said


@pytest.mark.parametrize('args, environment, code, message', [
    (['a', 'b'], {}, 2, 'source or target must be s3://BUCKET or s3://BUCKET/FOLDER'),
    (['s3://', '.'], {}, 2, "'s3://' is not s3://BUCKET or s3://BUCKET/FOLDER"),
    (['nowhere', 's3://bucket'], {}, 2, 'nowhere is not a folder'),
    (['.', 's3://bucket', '--concurrency', '0'], {}, 2, '--concurrency must be 1 or more'),
    (['s3://nothing', '.'], {}, 1,
     'S3NotFound: S3 answered 404 NoSuchBucket: The specified bucket does not exist'),
])
def test_s3_copy_says_what_is_wrong(s3, args, environment, code, message):
    ended = s3_copy(s3, *args, **environment)
    assert ended[:2] == (code, '')
    assert message in ended[2]


def test_s3_copy_wants_credentials(tmp_path):
    nowhere = str(tmp_path / 'nowhere')
    code, printed, said = run(
        's3_copy.py', 's3://bucket', '.', AWS_CONFIG_FILE=nowhere,
        AWS_SHARED_CREDENTIALS_FILE=nowhere, AWS_EC2_METADATA_DISABLED='true')
    assert (code, printed) == (1, '')
    assert 'CredentialsError: ' in said
    assert 'AWS_ACCESS_KEY_ID is not set' in said


def test_s3_copy_takes_the_credentials_of_a_profile(tmp_path):
    def script(conn, file):
        signed.append(dict(read_head(file)[1])['authorization'])
        conn.sendall(EMPTY_LISTING)

    signed = []
    profiles = tmp_path / 'credentials'
    profiles.write_text('[other]\naws_access_key_id = OTHER\naws_secret_access_key = secret\n')
    with Scripted(script) as server:
        assert s3_copy(server.origin, '--profile', 'other', 's3://bucket', tmp_path / 'target',
                       AWS_SHARED_CREDENTIALS_FILE=str(profiles))[:2] == (
            0, '0 copied, 0 skipped, 0 failed\n')
    assert signed[0].startswith('AWS4-HMAC-SHA256 Credential=OTHER/')


def test_s3_copy_without_a_server(tmp_path):
    with socket.socket() as sock:  # bound, and not listening
        sock.bind(('127.0.0.1', 0))
        code, printed, said = s3_copy(
            f'http://127.0.0.1:{sock.getsockname()[1]}', 's3://bucket', tmp_path)
    assert (code, printed) == (1, '')
    assert 'HttpConnectionError: GET http://127.0.0.1' in said
    assert 'Connection refused' in said


def test_s3_copy_is_interrupted(s3, bucket, tmp_path):
    put_key(bucket, 'key', b'12345')

    def script(conn, file):
        """The listing, and then half of the file."""
        while (head := read_head(file)) is not None:
            if 'list-type' not in head[0]:
                conn.sendall(b'HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n123')
                # As soon as there is the temporary file, it is in the middle of it.
                while not any(tmp_path.iterdir()):
                    pass
                process.send_signal(signal.SIGINT)
                assert file.read() == b''
                return
            content = ask(s3 + head[0].split(' ')[1])
            conn.sendall(b'HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b' % (
                len(content), content))

    with Scripted(script) as server, subprocess.Popen(
            [sys.executable, ROOT / 'examples' / 's3_copy.py', 's3://bucket', tmp_path],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={
                **ENVIRONMENT, 'AWS_ACCESS_KEY_ID': 'AKID', 'AWS_SECRET_ACCESS_KEY': 'secret',
                'AWS_ENDPOINT_URL': server.origin}) as process:
        printed, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, printed) == (130, '')
    assert said.endswith('Interrupted: what has been copied stays\n')
    assert 'Traceback' not in said
    assert list(tmp_path.iterdir()) == []


def test_s3_copy_signs_with_the_token_of_the_session(s3, bucket, tmp_path):
    seen = []

    def script(conn, file):
        seen.append(read_head(file)[1])
        conn.sendall(EMPTY_LISTING)

    with Scripted(script) as server:
        assert s3_copy(server.origin, '--region', 'eu-west-2', 's3://bucket', tmp_path,
                       AWS_SESSION_TOKEN='our-token')[:2] == (
            0, '0 copied, 0 skipped, 0 failed\n')
    fields = dict(seen[0])
    assert fields['x-amz-security-token'] == 'our-token'
    assert re.match('AWS4-HMAC-SHA256 Credential=AKID/[0-9]{8}/eu-west-2/s3/aws4_request, '
                    'SignedHeaders=host;x-amz-.*;x-amz-security-token,', fields['authorization'])


def test_s3_copy_signs_bodies_only_without_tls(tmp_path):
    def script(conn, file):
        while (head := read_head(file)) is not None:
            line, fields = head
            body = file.read(int(dict(fields).get('content-length', 0)))
            if line.startswith('PUT'):
                hashes.append(dict(fields)['x-amz-content-sha256'])
                assert body == b'hello'
            conn.sendall(EMPTY_LISTING)

    hashes = []
    source, certificates = tmp_path / 'source', tmp_path / 'certificates.pem'
    write(source, {'file': b'hello'})
    authority = trustme.CA()
    authority.cert_pem.write_to_path(certificates)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert('127.0.0.1').configure_cert(context)
    with Scripted(script, context) as tls, Scripted(script) as plain:
        for url in (tls.origin.replace('http:', 'https:'), plain.origin + '/'):
            assert s3_copy(url, source, 's3://bucket', SSL_CERT_FILE=str(certificates))[:2] == (
                0, '1 copied, 0 skipped, 0 failed\n')
    assert hashes == ['UNSIGNED-PAYLOAD', hashlib.sha256(b'hello').hexdigest()]


# ------------------------------------------------------------------------ reverse_proxy.py

BLOCK = random.Random(0).randbytes(64 * 1024)
LARGE = BLOCK * 1500  # 94 MiB
# What the kernel may hold of a stream that nobody reads, on its way over two connections. Linux
# lets the buffers of some machines grow to 36 MiB for each.
IN_BUFFERS = 75 * 1024 * 1024


class Upstream(Scripted):
    """Each request is answered by what `answer` is at that time."""

    def __init__(self):
        super().__init__(self.serve_requests)
        self.answer = None
        self.closed = threading.Semaphore(0)

    def serve_requests(self, conn, file):
        try:
            while (head := read_head(file)) is not None:
                self.answer(conn, file, *head)
        finally:
            self.closed.release()


class Serving:
    """An example that serves, under uvicorn, in a process of its own."""

    def __init__(self, *args, **environment):
        self.process = subprocess.Popen(
            [sys.executable, *args], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
            env={**ENVIRONMENT, **environment})

    def __enter__(self):
        self.process.__enter__()
        for line in self.process.stderr:
            if match := re.search(r'running on http://127.0.0.1:(\d+)', line):
                break
        self.port = int(match[1])
        self.said = []
        # Or its log fills the pipe, and it waits.
        self.thread = threading.Thread(target=lambda: self.said.extend(self.process.stderr))
        self.thread.start()
        return self

    def __exit__(self, *exception):
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.thread.join()
            self.process.__exit__(*exception)

    def connect(self):
        return socket.create_connection(('127.0.0.1', self.port), timeout=PATIENCE)

    def ask(self, line, *fields, body=b''):
        """Raw: the head, as lines, and all that follows."""
        with self.connect() as sock:
            sock.sendall(head(line, *fields, 'connection: close') + body)
            with sock.makefile('rb') as file:
                line, fields = read_head(file)
                return line.split(' ')[1], fields, file.read()

    def peak(self):
        """Bytes of memory that it has had at once. Only Linux tells."""
        path = pathlib.Path(f'/proc/{self.process.pid}/status')
        status = path.read_text() if path.exists() else 'VmHWM: 0 kB'
        return int(re.search(r'VmHWM:\s+(\d+) kB', status)[1]) * 1024


class Proxy(Serving):
    """`implementation` is uvicorn's for HTTP."""

    def __init__(self, implementation, *args):
        missing = {'h11': 'httptools', 'httptools': 'h11'}[implementation]
        super().__init__(
            '-c', f'import runpy, sys; sys.modules["{missing}"] = None; '
            'runpy.run_path(sys.argv.pop(1), run_name="__main__")',
            ROOT / 'examples' / 'reverse_proxy.py', '--port', '0', *args,
            # The clients of these tests are no proxies.
            FORWARDED_ALLOW_IPS='192.0.2.1')


def head(line, *fields):
    return '\r\n'.join((line + ' HTTP/1.1', 'host: client', *fields, '', '')).encode()


@pytest.fixture(scope='module')
def started_upstream():
    with Upstream() as upstream:
        yield upstream


@pytest.fixture
def upstream(started_upstream):
    yield started_upstream
    started_upstream.answer = None


@pytest.fixture(scope='module', params=['httptools', 'h11'])
def proxy(request, started_upstream):
    with Proxy(request.param, started_upstream.origin) as proxy:
        yield proxy
    # A client that has gone is nothing to tell of.
    assert 'ClientGone' not in ''.join(proxy.said)


def answering(*parts):
    """An answer of these bytes, whatever is asked. And what was asked is kept."""
    def answer(conn, file, line, fields):
        answer.line, answer.fields = line, fields
        answer.body = read_body(file, fields)
        conn.sendall(b''.join(parts))
        if not is_kept:
            conn.shutdown(socket.SHUT_RDWR)

    is_kept = None not in parts
    parts = [part for part in parts if part is not None]
    return answer


def read_body(file, fields):
    """And if it was whole."""
    fields = dict(fields)
    if 'transfer-encoding' not in fields:
        return file.read(int(fields.get('content-length', 0)))
    body = b''
    while size := int(file.readline(), 16):
        body += file.read(size)
        assert file.readline() == b'\r\n'
    assert file.readline() == b'\r\n'
    return body


def values(fields, name):
    return [value for other, value in fields if other == name]


def test_proxy_passes_on_a_request(proxy, upstream):
    upstream.answer = answering(b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok')
    code, _, body = proxy.ask(
        'POST /a//b%2Fc/../%20?q=1+2&q=%3F', 'X-One: 1', 'X-One: 2', 'cookie: a=b',
        'keep-alive: timeout=5', 'te: trailers', 'trailer: x', 'proxy-authorization: secret',
        'proxy-connection: keep-alive', 'x-named: secret', 'connection: x-named, X-Two',
        'x-two: secret', 'x-forwarded-for: 192.0.2.9', 'x-forwarded-host: evil',
        'forwarded: for=evil', 'via: 1.0 before', 'content-length: 5', body=b'hello')
    assert (code, body) == ('200', b'ok')
    assert upstream.answer.line == 'POST /a//b%2Fc/../%20?q=1+2&q=%3F HTTP/1.1'
    assert sorted(upstream.answer.fields) == sorted([
        ('host', upstream.origin.removeprefix('http://')), ('content-length', '5'),
        ('x-one', '1'), ('x-one', '2'), ('cookie', 'a=b'), ('x-forwarded-host', 'client'),
        ('x-forwarded-for', '127.0.0.1'), ('x-forwarded-proto', 'http'),
        ('via', '1.0 before'), ('via', '1.1 lowhaio')])
    assert upstream.answer.body == b'hello'


def test_proxy_passes_on_a_response(proxy, upstream):
    upstream.answer = answering(
        b'HTTP/1.1 404 Nope\r\nset-cookie: a=1\r\nset-cookie: b=2\r\nserver: ours\r\n'
        b'date: Sun, 06 Nov 1994 08:49:37 GMT\r\nconnection: x-named\r\nx-named: secret\r\n'
        b'keep-alive: timeout=5\r\nvia: 1.1 before\r\ncontent-length: 2\r\n\r\nno')
    code, fields, body = proxy.ask('GET /')
    assert (code, body) == ('404', b'no')
    assert sorted(fields) == sorted([
        ('set-cookie', 'a=1'), ('set-cookie', 'b=2'), ('server', 'ours'),
        ('date', 'Sun, 06 Nov 1994 08:49:37 GMT'), ('via', '1.1 before'),
        ('via', '1.1 lowhaio'), ('content-length', '2'), ('connection', 'close')])


@pytest.mark.parametrize('line, response, code, fields, body', [
    ('HEAD /', b'HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n', '200',
     [('content-length', '5')], b''),
    ('GET /', b'HTTP/1.1 304 Not Modified\r\netag: "x"\r\ncontent-length: 5\r\n\r\n', '304',
     [('etag', '"x"')], b''),
    ('GET /', b'HTTP/1.1 204 No Content\r\n\r\n', '204', [], b''),
    ('GET /', b'HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n', '200',
     [('content-length', '0')], b''),
    ('GET /', b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok', '200',
     [('content-length', '2')], b'ok'),
    ('GET /', b'HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\n'
     b'content-length: 2\r\n\r\nok', '200', [('content-length', '2')], b'ok'),
    ('GET /', b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n'
     b'2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n', '200', [('transfer-encoding', 'chunked')],
     b'2\r\nok\r\n0\r\n\r\n'),
    ('GET /', b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n'
     b'2\r\nok\r\n0\r\n\r\n', '200', [('transfer-encoding', 'chunked')], b'2\r\nok\r\n0\r\n\r\n'),
], ids=['head', '304', '204', 'empty', 'two-lengths', 'interim',
        'trailers', 'chunks-and-length'])
def test_proxy_frames_responses(proxy, upstream, line, response, code, fields, body):
    upstream.answer = answering(response)
    got_code, got_fields, got_body = proxy.ask(line)
    assert (got_code, got_body) == (code, body)
    assert sorted(field for field in got_fields
                  if field[0] not in ('date', 'via', 'connection')) == fields
    assert len(values(got_fields, 'date')) == 1


def test_proxy_passes_on_both_ways_at_once(proxy, upstream):
    def answer(conn, file, line, fields):
        conn.sendall(b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n')
        conn.sendall(b'4\r\nhere\r\n')
        while size := int(length := file.readline(), 16):
            conn.sendall(length + file.read(size + 2))
        assert file.readline() == b'\r\n'
        conn.sendall(b'0\r\n\r\n')

    upstream.answer = answer
    with proxy.connect() as sock, sock.makefile('rb') as file:
        sock.sendall(head('POST /', 'transfer-encoding: chunked'))
        assert read_head(file)[0].split(' ')[1] == '200'
        assert file.read(9) == b'4\r\nhere\r\n'
        for chunk in b'5\r\nhello\r\n', b'3\r\nyou\r\n':
            sock.sendall(chunk)
            assert file.read(len(chunk)) == chunk
        sock.sendall(b'0\r\n\r\n')
        assert file.read(5) == b'0\r\n\r\n'


@pytest.mark.parametrize('method', ['GET', 'POST'])
def test_proxy_passes_on_chunks(proxy, upstream, method):
    upstream.answer = answering(b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok')
    code, _, body = proxy.ask(f'{method} /', 'transfer-encoding: chunked',
                              body=b'5\r\nhello\r\n6\r\n world\r\n0\r\nx-trailer: 1\r\n\r\n')
    assert (code, body) == ('200', b'ok')
    assert values(upstream.answer.fields, 'transfer-encoding') == ['chunked']
    assert values(upstream.answer.fields, 'content-length') == []
    assert upstream.answer.body == b'hello world'


def test_proxy_passes_on_that_there_is_no_body(proxy, upstream):
    upstream.answer = answering(b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok')
    for fields, lengths in ([], []), (['content-length: 0'], ['0']):
        assert proxy.ask('POST /', *fields)[2] == b'ok'
        assert values(upstream.answer.fields, 'content-length') == lengths
        assert values(upstream.answer.fields, 'transfer-encoding') == []


def test_proxy_can_preserve_the_host(upstream):
    upstream.answer = answering(b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok')
    with Proxy('httptools', upstream.origin + '/base/', '--preserve-host') as proxy:
        assert proxy.ask('GET /path')[2] == b'ok'
    assert upstream.answer.line == 'GET /base/path HTTP/1.1'
    assert values(upstream.answer.fields, 'host') == ['client']


def test_proxy_refuses_what_would_be_another_origin(proxy, upstream):
    assert proxy.ask('OPTIONS *')[0] == '400'
    assert proxy.ask('GET @192.0.2.1/')[0] == '400'


# What breaks off

@pytest.mark.parametrize('start, rest', [
    (b'content-length: 10\r\n\r\nhello', b'hello'),
    (b'transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n', b'5\r\nhello\r\n'),
], ids=['length', 'chunks'])
def test_proxy_breaks_off_where_the_upstream_does(proxy, upstream, start, rest):
    upstream.answer = answering(b'HTTP/1.1 200 OK\r\n', start, None)
    code, _, body = proxy.ask('GET /')
    assert (code, body) == ('200', rest)


@pytest.mark.parametrize('response', [b'', b'HTTP/1.1 200', b'nonsense\r\n\r\n'])
def test_proxy_answers_502_to_what_is_no_response(proxy, upstream, response):
    upstream.answer = answering(response, None)
    code, _, body = proxy.ask('GET /')
    assert (code, body) == ('502', b'The upstream server can not be asked')
    assert proxy.ask('POST /', 'content-length: 1', body=b'x')[0] == '502'


def test_proxy_answers_502_without_an_upstream_server():
    with socket.socket() as sock:  # bound, and not listening
        sock.bind(('127.0.0.1', 0))
        port = sock.getsockname()[1]
        with Proxy('httptools', f'http://127.0.0.1:{port}') as proxy:
            assert proxy.ask('GET /secret')[0] == '502'
    # Told to who runs it, and not to the client.
    assert f'HttpConnectionError: GET http://127.0.0.1:{port}: connecting failed' in ''.join(
        proxy.said)


def test_proxy_answers_504_when_the_upstream_is_late(upstream):
    def answer(conn, file, line, fields):
        assert file.read() == b''

    upstream.answer = answer
    with Proxy('httptools', upstream.origin, '--timeout', '0.1') as proxy:
        code, _, body = proxy.ask('GET /')
    assert (code, body) == ('504', b'The upstream server took too long')


def test_proxy_asks_again_when_its_connection_was_stale(proxy, upstream):
    def hang_up(conn, file, line, fields):
        asked.append(line)
        upstream.answer = good
        conn.shutdown(socket.SHUT_RDWR)

    asked = []
    good = answering(b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok')
    upstream.answer = good
    proxy.ask('GET /')
    upstream.answer = hang_up
    assert proxy.ask('GET /')[0] == '200'
    upstream.answer = hang_up
    # What may not be done twice is not.
    assert proxy.ask('POST /')[0] == '502'
    assert len(asked) == 2


# Clients that go away

def hang_up_and_see(proxy, upstream, request):
    """The upstream server sees it, too: it does not have to end what it does."""
    while upstream.closed.acquire(blocking=False):
        pass
    with proxy.connect() as sock:
        sock.sendall(request)
        assert started.acquire(timeout=PATIENCE)
    assert upstream.closed.acquire(timeout=PATIENCE)


started = threading.Semaphore(0)


@pytest.mark.parametrize('request_bytes', [
    head('GET /'), head('POST /', 'content-length: 5') + b'hello'], ids=['no-body', 'body'])
def test_client_goes_before_the_response(proxy, upstream, request_bytes):
    def answer(conn, file, line, fields):
        read_body(file, fields)
        started.release()
        assert file.read() == b''

    upstream.answer = answer
    hang_up_and_see(proxy, upstream, request_bytes)


@pytest.mark.parametrize('code, request_bytes', [
    (b'200', head('GET /')),
    (b'200', head('POST /', 'content-length: 100') + b'hello'),
    (b'413', head('POST /', 'content-length: 100') + b'hello')])
def test_client_goes_during_the_response(proxy, upstream, code, request_bytes):
    def answer(conn, file, line, fields):
        conn.sendall(b'HTTP/1.1 %b Code\r\ntransfer-encoding: chunked\r\n\r\n' % code)
        started.release()
        while True:
            conn.sendall(b'10000\r\n%b\r\n' % BLOCK)

    upstream.answer = answer
    hang_up_and_see(proxy, upstream, request_bytes)


@pytest.mark.parametrize('field, sent, seen', [
    ('content-length: 10', b'hello', b'hello'),
    ('transfer-encoding: chunked', b'5\r\nhello\r\n', b'5\r\nhello\r\n'),
])
def test_client_goes_during_the_request(proxy, upstream, field, sent, seen):
    def answer(conn, file, line, fields):
        received.append(file.read(len(seen)))
        started.release()
        # Nothing that looks like its end.
        received.append(file.read())

    received = []
    upstream.answer = answer
    hang_up_and_see(proxy, upstream, head('POST /', field) + sent)
    assert received == [seen, b'']


# At the pace of who receives

def send_until_blocked(sock):
    """What is left when nobody has taken anything for half a second.

    On a slow machine that may come too early. Then less has been sent, and no harm is done.
    """
    left = memoryview(LARGE)
    patience = sock.gettimeout()
    sock.setblocking(False)
    while left and select.select([], [sock], [], 0.5)[1]:
        with contextlib.suppress(BlockingIOError):
            left = left[sock.send(left[:len(BLOCK)]):]
    sock.settimeout(patience)
    return left


def read_large(file):
    return all(file.read(len(BLOCK)) == BLOCK for _ in range(len(LARGE) // len(BLOCK)))


def test_proxy_reads_a_response_as_fast_as_the_client_does(proxy, upstream):
    def answer(conn, file, line, fields):
        conn.sendall(b'HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n' % len(LARGE))
        left = send_until_blocked(conn)
        sent.put(len(LARGE) - len(left))
        conn.sendall(left)

    sent = queue.Queue()
    upstream.answer = answer
    before = proxy.peak()
    with proxy.connect() as sock, sock.makefile('rb') as file:
        sock.sendall(head('GET /'))
        assert sent.get(timeout=PATIENCE) < IN_BUFFERS
        assert read_head(file)[0] == 'HTTP/1.1 200 OK'
        assert read_large(file)
    assert proxy.peak() - before < len(LARGE) // 10


@pytest.mark.parametrize('framing', ['content-length: 98304000', 'transfer-encoding: chunked'])
def test_proxy_reads_a_request_as_fast_as_the_upstream_server_does(proxy, upstream, framing):
    def answer(conn, file, line, fields):
        assert is_blocked.wait(PATIENCE)
        left = len(LARGE)
        digest = hashlib.sha256()
        while left:
            size = left if 'content-length' in dict(fields) else int(file.readline(), 16)
            left -= size
            while size:
                data = file.read(min(size, len(BLOCK)))
                digest.update(data)
                size -= len(data)
            if 'content-length' not in dict(fields):
                file.readline()
        if 'content-length' not in dict(fields):
            assert [file.readline(), file.readline()] == [b'0\r\n', b'\r\n']
        digests.append(digest.digest())
        conn.sendall(b'HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n')

    is_blocked = threading.Event()
    digests = []
    upstream.answer = answer
    before = proxy.peak()
    with proxy.connect() as sock, sock.makefile('rb') as file:
        sock.sendall(head('POST /', framing))
        if framing.startswith('transfer'):
            sock.sendall(b'%x\r\n' % len(LARGE))
        left = send_until_blocked(sock)
        is_blocked.set()
        assert len(LARGE) - len(left) < IN_BUFFERS
        sock.sendall(left)
        if framing.startswith('transfer'):
            sock.sendall(b'\r\n0\r\n\r\n')
        assert read_head(file)[0] == 'HTTP/1.1 200 OK'
    assert digests == [hashlib.sha256(LARGE).digest()]
    assert proxy.peak() - before < len(LARGE) // 10


# Who waits for whom

def test_client_is_told_to_continue_when_the_upstream_server_says_so(proxy, upstream):
    def answer(conn, file, line, fields):
        assert values(fields, 'expect') == ['100-continue']
        conn.sendall(b'HTTP/1.1 100 Continue\r\n\r\n')
        received.append(file.read(5))
        conn.sendall(b'HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n')

    received = []
    upstream.answer = answer
    with proxy.connect() as sock, sock.makefile('rb') as file:
        sock.sendall(head('PUT /', 'expect: 100-continue', 'content-length: 5'))
        assert read_head(file)[0] == 'HTTP/1.1 100 Continue'
        sock.sendall(b'hello')
        assert read_head(file)[0] == 'HTTP/1.1 200 OK'
    assert received == [b'hello']


def test_client_is_not_told_to_continue_when_the_upstream_server_refuses(proxy, upstream):
    def answer(conn, file, line, fields):
        conn.sendall(b'HTTP/1.1 413 No\r\ncontent-length: 2\r\n\r\nno')

    upstream.answer = answer
    code, _, body = proxy.ask('PUT /', 'expect: 100-continue', 'content-length: 5')
    assert (code, body) == ('413', b'no')


def test_upstream_server_may_answer_before_the_end_of_the_request(proxy, upstream):
    def answer(conn, file, line, fields):
        conn.sendall(b'HTTP/1.1 413 No\r\ncontent-length: 2\r\n\r\nno')

    upstream.answer = answer
    with proxy.connect() as sock, sock.makefile('rb') as file:
        sock.sendall(head('PUT /', 'content-length: 100') + b'hello')
        assert read_head(file)[0] [:13] == 'HTTP/1.1 413 '
        assert file.read(2) == b'no'


def test_proxy_sends_trailers_if_the_asgi_server_can(upstream):
    upstream.answer = answering(
        b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n')
    program = """if True:
        import asyncio, sys
        from reverse_proxy import ReverseProxy

        async def main(upstream):
            async def receive():
                return messages.pop(0) if messages else await asyncio.Event().wait()

            async def send(message):
                print(message)

            proxy = ReverseProxy(upstream)
            messages = [{'type': 'http.request', 'body': b'x', 'more_body': False}]
            await proxy({
                'type': 'http', 'http_version': '2', 'method': 'POST', 'scheme': 'https',
                'raw_path': b'/', 'query_string': b'', 'headers': [], 'client': None,
                'extensions': {'http.response.trailers': {}}}, receive, send)
            await proxy.close()

        asyncio.run(main(sys.argv[1]))
        """
    ended = subprocess.run(
        [sys.executable, '-c', program, upstream.origin], capture_output=True, check=True,
        text=True, timeout=PATIENCE, cwd=ROOT / 'examples', env=ENVIRONMENT)
    messages = [ast.literal_eval(line) for line in ended.stdout.splitlines()]
    assert messages[0]['trailers'] is True
    assert messages[-1] == {'type': 'http.response.trailers', 'headers': ((b'x-sum', b'1'),)}
    # In HTTP/2, a body needs no field that tells of it.
    assert upstream.answer.body == b'x'


def test_proxy_is_interrupted(upstream):
    upstream.answer = answering(b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok')
    with Proxy('httptools', upstream.origin) as proxy:
        proxy.ask('GET /')
    assert proxy.process.returncode == 0
    said = ''.join(proxy.said)
    # A pool that had not been closed would be a warning.
    assert 'Warning' not in said
    assert 'Traceback' not in said


@pytest.mark.parametrize('url', ['upstream:8000', 'ftp://upstream', 'http://', 'http://a/?b'])
def test_proxy_wants_a_url(url):
    code, printed, said = run('reverse_proxy.py', url)
    assert (code, printed) == (2, '')
    assert 'upstream must be a URL such as http://127.0.0.1:8000' in said


# ------------------------------------------------------------------------ model_service.py


class ModelService(Serving):
    def __init__(self, *args):
        super().__init__(ROOT / 'examples' / 'model_service.py', '--port', '0', *args,
                         OPENAI_API_KEY='a-key')

    def asking(self, question, stream):
        """A socket that has asked."""
        sock = self.connect()
        body = json.dumps({'question': question, 'stream': stream}).encode()
        sock.sendall(head('POST /answers', 'connection: close', 'content-type: application/json',
                          f'content-length: {len(body)}') + body)
        return sock

    def answer(self, question, stream=False):
        """The status, and the body."""
        with self.asking(question, stream) as sock, sock.makefile('rb') as file:
            line, fields = read_head(file)
            return int(line.split(' ')[1]), read_body(file, fields)


class ScriptedModel(Scripted):
    """A model. Each request is answered by the script. What was asked, and over which connection,
    is kept."""

    def __init__(self, script):
        super().__init__(self.answer_all)
        self.answer_one = script
        self.asked = []
        self.ports = []
        self.ended = threading.Semaphore(0)

    def answer_all(self, conn, file):
        try:
            while (asked := read_head(file)) is not None:
                line, fields = asked
                assert line == 'POST /v1/chat/completions HTTP/1.1'
                assert values(fields, 'authorization') == ['Bearer a-key']
                self.asked.append(json.loads(read_body(file, fields)))
                self.ports.append(conn.getpeername()[1])
                if self.answer_one(conn, file) is False:
                    return
        finally:
            self.ended.release()


def word(text):
    event = json.dumps({'choices': [{'delta': {'content': text}}]})
    return b'%x\r\ndata: %b\n\n\r\n' % (len(event) + 8, event.encode())


EVENT_STREAM = (b'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n'
                b'transfer-encoding: chunked\r\n\r\n')
NO_MORE_WORDS = b'e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n'


@pytest.mark.parametrize('transport', ['stock', 'lowhaio'])
def test_model_service_with_its_own_model(transport):
    with ModelService('--transport', transport) as service:
        assert service.answer('What is it?') == (200, b'{"answer":"What is it?"}')
        assert service.answer('What is it?', stream=True) == (200, b'What is it? ')
        assert service.answer('')[0] == 200
    assert service.process.returncode == 0
    assert 'Traceback' not in ''.join(service.said)


def test_model_service_passes_on_the_words_as_they_come():
    def script(conn, file):
        conn.sendall(EVENT_STREAM)
        for text in 'one', 'two':
            conn.sendall(word(text))
            assert received.acquire(timeout=PATIENCE)
        conn.sendall(NO_MORE_WORDS)

    received = threading.Semaphore(0)
    with ScriptedModel(script) as model, ModelService(
            '--model', f'{model.origin}/v1', '--name', 'a-model') as service:
        for _ in range(3):
            with service.asking('What is it?', True) as sock, sock.makefile('rb') as file:
                read_head(file)
                for text in b'one', b'two':
                    assert file.readline() == b'3\r\n'
                    assert file.read(5) == text + b'\r\n'
                    received.release()
                assert file.read() == b'0\r\n\r\n'
    assert model.asked == 3 * [{'model': 'a-model', 'stream': True, 'messages': [
        {'role': 'user', 'content': 'What is it?'}]}]
    assert len(set(model.ports)) == 1


def test_model_service_ends_what_nobody_listens_to():
    def script(conn, file):
        conn.sendall(EVENT_STREAM + word('one'))
        assert file.read() == b''
        return False

    with ScriptedModel(script) as model, ModelService(
            '--model', f'{model.origin}/v1') as service:
        with service.asking('What is it?', True) as sock, sock.makefile('rb') as file:
            read_head(file)
            assert file.readline() == b'3\r\n'
        assert model.ended.acquire(timeout=PATIENCE)
    assert 'Traceback' not in ''.join(service.said)


def test_model_service_tells_of_failures():
    responses = {
        'refused': b'HTTP/1.1 429 No\r\ncontent-length: 2\r\n\r\n{}',
        'closed': b'',
        'nonsense': b'nonsense\r\n\r\n',
    }

    def script(conn, file):
        conn.sendall(responses[model.asked[-1]['messages'][0]['content']])
        return False

    with ScriptedModel(script) as model, ModelService('--model', f'{model.origin}/v1') as service:
        for name in responses:
            for stream in False, True:
                code, content = service.answer(name, stream)
                assert code == 502
                begin = "Client error '429 No'" if name == 'refused' else f'POST {model.origin}'
                assert json.loads(content)['detail'].startswith(f'The model: {begin} ')
    assert len(model.asked) == 6
    assert 'Traceback' not in ''.join(service.said)


# ------------------------------------------------------------------------- link_checker.py

@contextlib.contextmanager
def website(pages):
    """Its origin, and the requests that came. `pages` are bodies, or codes with the rest of the
    head, by path."""
    def script(conn, file):
        while (head := read_head(file)) is not None:
            line, fields = head
            method, path, _ = line.split(' ')
            asked.append(f'{method} {path}')
            assert dict(fields)['user-agent'] == 'lowhaio-link-checker'
            page = pages.get(path, '404')
            if callable(page):
                page = page(method)
            code, body = ('200', page) if page.startswith('<') else (page, '')
            if '\n' not in code:
                code += '\ncontent-type: text/html; charset=utf-8'
            start, _, robots = code.partition('\n\n')
            body = (body or robots).encode()
            conn.sendall(f'HTTP/1.1 {start}\ncontent-length: {len(body)}\n\n'.replace(
                '\n', '\r\n').encode() + (body if method != 'HEAD' else b''))

    asked = []
    with Scripted(script) as server:
        yield server.origin, asked


def link_checker(*args):
    return run('link_checker.py', *args)


def broken(printed):
    return printed.splitlines()[:-1]


def test_link_checker_finds_nothing_wrong():
    pages = {
        '/': '<a href="a">1</a><a href="/a#x">2</a><a href="?q=1 2">3</a><a href="HTTP://HOST/b">'
             '<a href="mailto:a@b">4</a><a href="javascript:void(0)">5</a><a href="#top">6</a>'
             '<a href="">7</a><a>8</a><a href="//HOST/b">9</a><a href="/b" href="/wrong">10</a>'
             '<link rel=preconnect href="http://192.0.2.1"><img src=c><a href=c>11</a>',
        '/?q=1%202': '<p>', '/a': '<p id=x>', '/b': '<a href="/">home</a>',
        '/c': '<p>',
    }
    with website(pages) as (origin, asked):
        # A name, so that its case can differ.
        name = origin.replace('http://127.0.0.1', 'localhost')
        pages['/'] = pages['/'].replace('//HOST', f'//{name.upper()}')
        code, printed, said = link_checker(f'http://{name}')
    assert (code, printed) == (0, '5 URLs checked, 5 pages read, 0 disallowed by robots.txt, '
                                  '0 broken links\n')
    assert sorted(asked) == ['GET /', 'GET /?q=1%202', 'GET /a', 'GET /b', 'GET /c',
                             'GET /robots.txt']
    assert '5/5' in said


def test_link_checker_tells_where_broken_links_stand():
    pages = {
        '/': '<base href="/sub/">\n<base href="/other/">\n<a href="page">\n<img src=no.png>\n'
             '<a href="../gone">\n<a href="../gone">\n<script src="../no.js"></script>\n'
             '<link rel=stylesheet href=no.css>\n<a href="page#there">\n<a href="page#missing">\n'
             '<a href="page#%C3%A9">\n<a href="page#!/route">\n<a href="http://[bad/">\n'
             '<a href="page#:~:text=a"><a href="page#named">',
        '/sub/page': '<a href="/gone">\n<p id="there"><p id="é"><a name=named>',
        '/sub/no.png': '500', '/gone': '410',
    }
    with website(pages) as (origin, asked), website({}) as (other, asked_other):
        pages['/'] += f'\n<a href="{other}/missing">'
        code, printed, _ = link_checker(origin + '/')
    assert (code, broken(printed)) == (1, [
        f'{origin}/:4: {origin}/sub/no.png: 500',
        f'{origin}/:5: {origin}/gone: 410',
        f'{origin}/:6: {origin}/gone: 410',
        f'{origin}/:7: {origin}/no.js: 404',
        f'{origin}/:8: {origin}/sub/no.css: 404',
        f'{origin}/:10: {origin}/sub/page#missing: there is no element with this id',
        f'{origin}/:13: http://[bad/: ValueError: Invalid IPv6 URL',
        f'{origin}/:15: {other}/missing: 404',
        f'{origin}/sub/page:1: {origin}/gone: 410'])
    # Each once: what may be a page by GET, the rest by HEAD, and by GET if that is no good.
    assert sorted(asked) == [
        'GET /', 'GET /gone', 'GET /no.js', 'GET /robots.txt', 'GET /sub/no.css',
        'GET /sub/no.png', 'GET /sub/page', 'HEAD /no.js', 'HEAD /sub/no.png']
    assert sorted(asked_other) == ['GET /missing', 'GET /robots.txt', 'HEAD /missing']


def test_link_checker_checks_other_sites_by_head_and_does_not_follow_them():
    def no_head(method):
        return '405' if method == 'HEAD' else '<a href="/never">'

    others = {'/': '<a href="/never">', '/no-head': no_head}
    with website(others) as (other, asked_other), website({
            '/': f'<a href="{other}/"><a href="{other}/no-head"><img src="{other}/">'}) as (
                origin, _):
        code, printed, _ = link_checker(origin)
    assert (code, broken(printed)) == (0, [])
    assert sorted(asked_other) == ['GET /no-head', 'GET /robots.txt', 'HEAD /', 'HEAD /no-head']


def test_link_checker_follows_redirects():
    pages = {
        '/': '<a href="/moved#here">1</a>\n<a href="/loop">2</a>\n<a href="/away">3</a>',
        '/moved': '301 Moved\nlocation: /new/', '/new/': '<p id=here><a href="below">',
        '/new/below': '<p>', '/loop': '302 Found\nlocation: /loop',
    }
    with website({'/page': '<a href="/never">'}) as (other, asked_other):
        pages['/away'] = f'302 Found\nlocation: {other}/page'
        with website(pages) as (origin, asked):
            code, printed, _ = link_checker(origin)
    assert code == 1
    (line,) = broken(printed)
    assert line.startswith(f'{origin}/:2: {origin}/loop: HttpTooManyRedirects: ')
    # Links are relative to where the page was in the end.
    assert 'GET /new/below' in asked
    assert asked_other == ['GET /robots.txt', 'GET /page']


def test_link_checker_takes_the_site_to_be_where_the_start_leads_to():
    with website({'/': '<a href="/page">', '/page': '<a href="/gone">'}) as (origin, _), website({
            '/': f'301 Moved\nlocation: {origin}/'}) as (start, asked):
        code, printed, _ = link_checker(start)
    assert (code, broken(printed)) == (1, [f'{origin}/page:1: {origin}/gone: 404'])
    assert asked == ['GET /robots.txt', 'GET /']


def test_link_checker_obeys_robots_txt():
    pages = {
        '/robots.txt': '200 OK\ncontent-type: text/plain\n\nUser-agent: lowhaio-link-checker\n'
                       'Disallow: /private/\n',
        '/': '<a href="/private/page"><a href="/redirect"><a href="/public">',
        '/redirect': '302 Found\nlocation: /private/other', '/public': '<p>',
    }
    with website({'/robots.txt': '503'}) as (failing, asked_failing):
        pages['/'] += f'<a href="{failing}/page">'
        with website(pages) as (origin, asked):
            code, printed, _ = link_checker(origin)
    assert (code, printed) == (0, '5 URLs checked, 2 pages read, 3 disallowed by robots.txt, '
                                  '0 broken links\n')
    assert sorted(asked) == ['GET /', 'GET /public', 'GET /redirect', 'GET /robots.txt']
    assert set(asked_failing) == {'GET /robots.txt'}

    pages['/robots.txt'] += 'Disallow: /\n'
    with website(pages) as (origin, asked):
        code, printed, _ = link_checker(origin)
    assert (code, broken(printed)) == (1, [
        f'(the start):0: {origin}/: disallowed by robots.txt'])
    assert asked == ['GET /robots.txt']


class Endless(dict):
    """Each page links to two more."""

    def get(self, path, default):
        return f'<a href="{path}0/"><a href="{path}1/">' if path.endswith('/') else default


@pytest.mark.parametrize('args, checked, read', [
    (['--max-pages', '5'], 11, 5),
    (['--max-depth', '0'], 3, 1),
    (['--max-depth', '2'], 15, 7),
])
def test_link_checker_comes_to_an_end(args, checked, read):
    with website(Endless()) as (origin, asked):
        code, printed, _ = link_checker(origin, *args)
    assert (code, printed) == (0, f'{checked} URLs checked, {read} pages read, '
                                  '0 disallowed by robots.txt, 0 broken links\n')
    # And once for each.
    assert len(asked) == len(set(asked)) == checked + len(['/robots.txt'])


def test_link_checker_limits_the_requests_at_once():
    def slow(method):
        if method == 'GET':
            barrier.wait(PATIENCE)
        return '<p>'

    # If there were fewer than these, nothing would be answered.
    barrier = threading.Barrier(3)
    pages = {'/': ''.join(f'<a href="/{number}">' for number in range(9)),
             **{f'/{number}': slow for number in range(9)}}
    with website(pages) as (origin, _):
        code, printed, _ = link_checker(origin, '--per-origin', '3', '--concurrency', '5')
        assert (code, broken(printed)) == (0, [])


def test_link_checker_reports_sites_that_can_not_be_reached():
    with socket.socket() as sock:  # bound, and not listening
        sock.bind(('127.0.0.1', 0))
        nobody = f'http://127.0.0.1:{sock.getsockname()[1]}'
        with website({'/': f'<a href="{nobody}/a">'}) as (origin, _):
            code, printed, _ = link_checker(origin)
        assert code == 1
        assert broken(printed)[0].startswith(
            f'{origin}/:1: {nobody}/a: HttpConnectionError: HEAD {nobody}: connecting failed: ')

        code, printed, _ = link_checker(nobody)
        assert code == 1
        assert broken(printed)[0].startswith(
            f'(the start):0: {nobody}/: HttpConnectionError: GET {nobody}: connecting failed: ')


def test_link_checker_reads_compressed_pages():
    content = gzip.compress(b'<a href="/gone">')

    def script(conn, file):
        while (head := read_head(file)) is not None:
            if head[0].startswith('GET / '):
                conn.sendall(b'HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-encoding: '
                             b'gzip\r\ncontent-length: %d\r\n\r\n%b' % (len(content), content))
            else:
                conn.sendall(b'HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n')

    with Scripted(script) as server:
        code, printed, _ = link_checker(server.origin)
    assert (code, broken(printed)) == (1, [f'{server.origin}/:1: {server.origin}/gone: 404'])


@pytest.mark.parametrize('args, message', [
    (['www.example.com'], 'url must be a URL such as https://www.example.com/'),
    (['http://'], 'url must be a URL such as https://www.example.com/'),
    (['http://[bad'], 'Invalid IPv6 URL'),
    (['http://a/', '--concurrency', '0'], 'numbers must be 1 or more'),
])
def test_link_checker_says_what_is_wrong(args, message):
    code, printed, said = link_checker(*args)
    assert (code, printed) == (2, '')
    assert message in said


def test_link_checker_is_interrupted():
    def script(conn, file):
        read_head(file)
        process.send_signal(signal.SIGINT)
        assert file.read() == b''

    with Scripted(script) as server, subprocess.Popen(
            [sys.executable, ROOT / 'examples' / 'link_checker.py', server.origin],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=ENVIRONMENT) as process:
        printed, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, printed) == (130, '')
    assert said.endswith('Interrupted\n')
    assert 'Traceback' not in said
