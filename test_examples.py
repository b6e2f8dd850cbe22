"""The programs in examples/, run as a person runs them, against servers of this machine.

What the quickstart does is in test.py.
"""

import contextlib
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request

import pytest

HERE = pathlib.Path(__file__).parent
LAYERS = sorted({path.parent for path in HERE.glob('layers/*/lowhaio_*.py')})
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items()
       if not name.startswith('AWS_') and not name.lower().endswith('_proxy')},
    'PYTHONPATH': os.pathsep.join(map(str, (HERE, *LAYERS))),
    'PYTHONWARNINGS': 'error',
}

# So that a hang is a failure. Nothing waits for it to pass.
PATIENCE = 60


def run(example, *args, **environment):
    """The exit code, what it printed, and what it said on standard error."""
    ended = subprocess.run(
        [sys.executable, HERE / 'examples' / example, *args], capture_output=True, check=False,
        text=True, timeout=PATIENCE, env={**ENVIRONMENT, **environment})
    assert 'Traceback' not in ended.stderr
    assert 'Warning' not in ended.stderr
    return ended.returncode, ended.stdout, ended.stderr


class Scripted:
    """A server on a port of its own. Each connection runs the script, in a thread."""

    def __init__(self, script):
        self.script = script
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
        with conn, conn.makefile('rb') as file:
            conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                self.script(conn, file)
            except OSError:
                pass  # the other end hung up
            except BaseException as error:
                self.failures.append(error)


def read_head(file):
    """The first line and the fields, as text; None at the end of the connection."""
    lines = []
    while (line := file.readline()) not in (b'\r\n', b''):
        lines.append(line.decode('latin-1').strip())
    return (lines[0], [tuple(line.split(': ', 1)) for line in lines[1:]]) if lines else None


def test_each_example_tells_how_it_is_used():
    for path in (HERE / 'examples').glob('*.py'):
        code, printed, said = run(path.name, '--help')
        assert (code, said) == (0, '')
        assert f'python examples/{path.name}' in printed


# ------------------------------------------------------------------------------ s3_copy.py

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
    """The URL of a server that asks `s3`, unless `answer` of line, fields and connection has
    something else to send. And the lines that it was asked."""
    lines = []

    def script(conn, file):
        while (head := read_head(file)) is not None:
            line, fields = head
            lines.append(line)
            content = file.read(int(dict(fields).get('content-length', 0)))
            response = answer(line)
            if isinstance(response, bytes):
                conn.sendall(response)
                continue
            method, target, _ = line.split(' ')
            request = urllib.request.Request(
                s3 + (response or target), content or None, method=method,
                headers={'content-type': 'application/octet-stream', **dict(fields)})
            with urllib.request.urlopen(request, timeout=PATIENCE) as upstream:
                content = upstream.read()
                conn.sendall(b'HTTP/1.1 %d \r\ncontent-length: %d\r\n\r\n%b' % (
                    upstream.status, len(content), content))

    with Scripted(script) as server:
        yield server.origin, lines


def test_s3_copy_lists_all_pages(s3, bucket, tmp_path):
    def two_at_once(line):
        target = line.split(' ')[1]
        return f'{target}&max-keys=2' if 'list-type' in target else None

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
    assert "'plain.txt': S3 answered 403: AccessDenied: No & no\n" in said
    assert f"'{tmp_path}/broken': FileNotFoundError" in said
    assert get_key(bucket, 'large') == CONTENTS['large']


def test_s3_copy_retries(s3, bucket, tmp_path):
    """What is answered with 503, and what breaks off in the middle."""
    put_key(bucket, 'key', b'12345')
    wrong = [b'HTTP/1.1 503 Slow Down\r\ncontent-length: 0\r\n\r\n',
             b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabcde\r\nx\r\n']

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

    def shorter(line):
        return (b'HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n1234'
                if line.startswith('GET /bucket/key ') else None)

    with between(s3, shorter) as (url, _):
        code, printed, said = s3_copy(url, 's3://bucket', tmp_path)
    assert (code, printed) == (1, '0 copied, 0 skipped, 1 failed\n')
    assert "'key': 4 bytes came, but 5 were listed\n" in said
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
        assert f'{key!r}: its key is no path in the folder\n' in said
    assert read(tmp_path) == {'target/good': b'x'}


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
    assert "'key': S3 answered 200: InternalError\n" in said


@pytest.mark.parametrize('args, environment, code, message', [
    (['a', 'b'], {}, 2, 'source or target must be s3://BUCKET or s3://BUCKET/FOLDER'),
    (['s3://', '.'], {}, 2, "'s3://' is not s3://BUCKET or s3://BUCKET/FOLDER"),
    (['nowhere', 's3://bucket'], {}, 2, 'nowhere is not a folder'),
    (['.', 's3://bucket', '--concurrency', '0'], {}, 2, '--concurrency must be 1 or more'),
    (['s3://nothing', '.'], {}, 1,
     'CopyError: S3 answered 404: NoSuchBucket: The specified bucket does not exist'),
])
def test_s3_copy_says_what_is_wrong(s3, args, environment, code, message):
    ended = s3_copy(s3, *args, **environment)
    assert ended[:2] == (code, '')
    assert message in ended[2]


def test_s3_copy_wants_credentials():
    code, printed, said = run('s3_copy.py', 's3://bucket', '.')
    assert (code, printed) == (2, '')
    assert 'AWS_ACCESS_KEY_ID must be in the environment' in said


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
            [sys.executable, HERE / 'examples' / 's3_copy.py', 's3://bucket', tmp_path],
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
        conn.sendall(b'HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n<a/>')

    with Scripted(script) as server:
        assert s3_copy(server.origin, '--region', 'eu-west-2', 's3://bucket', tmp_path,
                       AWS_SESSION_TOKEN='our-token')[:2] == (
            0, '0 copied, 0 skipped, 0 failed\n')
    fields = dict(seen[0])
    assert fields['x-amz-security-token'] == 'our-token'
    assert re.match('AWS4-HMAC-SHA256 Credential=AKID/[0-9]{8}/eu-west-2/s3/aws4_request, '
                    'SignedHeaders=host;x-amz-.*;x-amz-security-token,', fields['authorization'])
