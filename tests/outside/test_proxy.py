"""lowhaio_proxy with the proxies that people run, and curl beside it.

Squid, tinyproxy, Dante, microsocks, nginx and curl are packages of Debian: see CONTRIBUTING.md.
Each runs with a configuration of its own, in a temporary directory, on free ports of this machine.
"""

import asyncio
import contextlib
import hashlib
import importlib.util
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import threading
import time

import pytest

from lowhaio import HttpConnectionError, HttpDataError, HttpError, buffered, streamed
from lowhaio_proxy import Proxy, ProxyError, from_environment, proxied_pool
from lowhaio_retry import is_lasting, retry
from tests.harness import authority, bound_to, of_length, on_loops, row, trusting

ROOT = pathlib.Path(__file__).parent.parent.parent
START_TIMEOUT = 30  # seconds, many times what it takes
USER, PASSWORD = 'user', 'pass:word'
PAGE = os.urandom(1_000_000)


def needed(*programs):
    missing = [program for program in programs if not shutil.which(program, path=PATH)]
    return pytest.mark.skipif(bool(missing), reason=f'not installed: {", ".join(missing)}')


PATH = f'{os.environ["PATH"]}:/usr/sbin:/usr/local/sbin'


def free_ports(count):
    socks = [bound_to('127.0.0.1')[0] for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in socks]
    for sock in socks:
        sock.close()
    return ports


@contextlib.contextmanager
def running(make, count=1):
    """Start a server of `make(directory, *ports)`, a command. Yield the ports when it listens.

    Another program may have taken a port meanwhile, and then there are other ports. Some servers
    give up the rights of root, so the directory is for all.
    """
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        directory.chmod(0o777)
        yield from started(directory, make, count)


def started(directory, make, count):
    for _ in range(3):
        ports = free_ports(count)
        with open(directory / 'output', 'wb') as output:
            process = subprocess.Popen(
                make(directory, *ports), stdout=output, stderr=output, cwd=directory,
                env={**os.environ, 'PATH': PATH})
        try:
            if all(listens(process, port) for port in ports):
                yield ports
                return
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    raise AssertionError((directory / 'output').read_text(errors='replace'))


def listens(process, port):
    end = time.monotonic() + START_TIMEOUT
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(('127.0.0.1', port)):
            return True
        time.sleep(0.02)
    return False


# ------------------------------------------------------------------------------------ the servers

def write_certificate(directory):
    certificate = authority().issue_cert('127.0.0.1', '::1', 'localhost')
    path = directory / 'certificate.pem'
    path.write_bytes(certificate.private_key_and_cert_chain_pem.bytes())
    return path


def nginx(directory, http, https):
    (directory / 'page').write_bytes(PAGE)
    certificate = write_certificate(directory)
    (directory / 'nginx.conf').write_text(f'''
        {"user root;" if os.getuid() == 0 else ""}
        daemon off; pid {directory}/pid; error_log stderr;
        events {{}}
        http {{
            access_log off; client_max_body_size 0;
            client_body_temp_path {directory}/a; proxy_temp_path {directory}/b;
            fastcgi_temp_path {directory}/c; uwsgi_temp_path {directory}/d;
            scgi_temp_path {directory}/e;
            server {{
                listen 127.0.0.1:{http}; listen [::1]:{http};
                listen 127.0.0.1:{https} ssl; listen [::1]:{https} ssl;
                ssl_certificate {certificate}; ssl_certificate_key {certificate};
                location = /small {{ return 200 "$request_uri $host"; }}
                location = /put {{ dav_methods PUT; root {directory}; }}
                location / {{ root {directory}; }}
            }}
        }}''')
    return ['nginx', '-e', 'stderr', '-c', f'{directory}/nginx.conf']


def squid(*schemes):
    def make(directory, port, tls_port):
        certificate = write_certificate(directory)
        certificate.chmod(0o644)
        hashed = subprocess.run(['openssl', 'passwd', '-apr1', PASSWORD], check=True,
                                capture_output=True, text=True).stdout.strip()
        (directory / 'basic').write_text(f'{USER}:{hashed}\n')
        secret = hashlib.md5(f'{USER}:realm:{PASSWORD}'.encode()).hexdigest()  # noqa: S324
        (directory / 'digest').write_text(f'{USER}:realm:{secret}\n')
        programs = {'basic': 'basic_ncsa_auth', 'digest': 'digest_file_auth -c'}
        auth = ''.join(
            f'auth_param {scheme} program /usr/lib/squid/{programs[scheme]} {directory}/{scheme}\n'
            f'auth_param {scheme} children 2\nauth_param {scheme} realm realm\n'
            for scheme in schemes)
        (directory / 'squid.conf').write_text(f'''
http_port 127.0.0.1:{port}
https_port 127.0.0.1:{tls_port} tls-cert={certificate} tls-key={certificate}
{auth}
pid_filename {directory}/pid
cache_log {directory}/cache.log
access_log none
cache deny all
cache_mem 1 MB
memory_cache_shared off
coredump_dir {directory}
shutdown_lifetime 0 seconds
dns_nameservers 127.0.0.1
dns_timeout 1 seconds
dns_retransmit_interval 1 seconds
acl forbidden port 9
http_access deny forbidden
{"acl known proxy_auth REQUIRED" if schemes else ""}
http_access allow {"known" if schemes else "localhost"}
http_access deny all
''')
        return ['squid', '-N', '-f', f'{directory}/squid.conf', '-n', f'test{port}']

    return make


def tinyproxy(with_auth):
    def make(directory, port):
        auth = f'BasicAuth {USER} pass\n' if with_auth else ''
        (directory / 'conf').write_text(
            f'Port {port}\nListen 127.0.0.1\nTimeout 60\nMaxClients 50\nAllow 127.0.0.1\n{auth}')
        return ['tinyproxy', '-d', '-c', f'{directory}/conf']

    return make


def danted(directory, port):
    (directory / 'conf').write_text(f'''
logoutput: stderr
internal: 127.0.0.1 port = {port}
external: lo
socksmethod: none
clientmethod: none
client pass {{ from: 0/0 to: 0/0 }}
socks block {{ from: 0/0 to: 0/0 port = 9 }}
socks pass {{ from: 0/0 to: 0/0 }}
''')
    return ['danted', '-f', f'{directory}/conf', '-p', f'{directory}/pid']


def microsocks(*auth):
    return lambda directory, port: ['microsocks', '-i', '127.0.0.1', '-p', str(port), *auth]


# By name: the program, how it is started, its number of ports, and the URLs of each port.
BASIC = f'{USER}:pass%3Aword@'
PROXIES = {
    'squid': ('squid', squid(), ('http://', 'https://')),
    'squid-basic': ('squid', squid('basic'), (f'http://{BASIC}', f'https://{BASIC}')),
    'squid-digest': ('squid', squid('digest'), (f'http://{BASIC}', f'https://{BASIC}')),
    'tinyproxy': ('tinyproxy', tinyproxy(False), ('http://',)),
    'tinyproxy-basic': ('tinyproxy', tinyproxy(True), (f'http://{USER}:pass@',)),
    'dante': ('danted', danted, ('socks5h://',)),
    'microsocks': ('microsocks', microsocks(), ('socks5h://',)),
    'microsocks-auth': ('microsocks', microsocks('-u', USER, '-P', 'pass'),
                        (f'socks5://{USER}:pass@',)),
}


@pytest.fixture(scope='module')
def origin():
    if not shutil.which('nginx', path=PATH):
        pytest.skip('not installed: nginx')
    with running(nginx, 2) as ports:
        yield dict(zip(('http', 'https'), ports, strict=True))


@pytest.fixture(scope='module', params=PROXIES)
def proxy(request):
    """The name of a proxy, and its URLs."""
    program, make, starts = PROXIES[request.param]
    if not shutil.which(program, path=PATH):
        pytest.skip(f'not installed: {program}')
    with running(make, len(starts)) as ports:
        yield request.param, [f'{start}127.0.0.1:{port}'
                              for start, port in zip(starts, ports, strict=True)]


@contextlib.asynccontextmanager
async def proxied(proxies, **options):
    request, close = proxied_pool(proxies, get_ssl_context=trusting,
                                  get_proxy_ssl_context=trusting, **options)
    try:
        yield request
    finally:
        await close()
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def proxied_again(proxies, **options):
    """For what goes well: tinyproxy may close a connection while a request is on its way to it."""
    async with proxied(proxies, **options) as request:
        yield retry(request)


# -------------------------------------------------------------------------------------- the tests

@on_loops
async def test_pages_come_through_each_proxy(proxy, origin):
    name, urls = proxy
    for url in urls:
        async with proxied_again(url) as request:
            for scheme in ('http', 'https'):
                for host in ('127.0.0.1', '[::1]', 'localhost'):
                    # Squid of this configuration knows no IPv6 addresses of its own to use.
                    with row((url, scheme, host)):
                        at = f'{scheme}://{host}:{origin[scheme]}'
                        code, _, body = await request(b'GET', f'{at}/small?a=b')
                        said = await buffered(body)
                        assert (code, said) == (b'200', f'/small?a=b {host}'.encode())
                        code, _, body = await request(b'GET', f'{at}/page')
                        assert await buffered(body) == PAGE


@on_loops
async def test_many_requests_at_once_come_through_each_proxy(proxy, origin):
    _, urls = proxy
    for url in urls:
        async with proxied_again(url, max_connections=10, socket_timeout=60) as request:
            async def one(number):
                scheme = ('http', 'https')[number % 2]
                code, _, body = await request(  # noqa: B023
                    b'GET', f'{scheme}://127.0.0.1:{origin[scheme]}/small?{number}')
                return code, await buffered(body)

            assert await asyncio.gather(*map(one, range(40))) == [
                (b'200', b'/small?%d 127.0.0.1' % number) for number in range(40)]


@on_loops
async def test_a_body_goes_through_each_proxy(proxy, origin):
    _, urls = proxy
    for url in urls:
        async with proxied_again(url) as request:
            for scheme in ('http', 'https'):
                with row((url, scheme)):
                    code, _, body = await request(
                        b'PUT', f'{scheme}://127.0.0.1:{origin[scheme]}/put',
                        headers=of_length(len(PAGE)), body=streamed(PAGE))
                    await buffered(body)
                    assert code in (b'201', b'204')


@on_loops
async def test_wrong_credentials_are_an_error_that_lasts(proxy, origin):
    name, urls = proxy
    if '-' not in name:
        return
    for url in urls:
        scheme, _, rest = url.partition('://')
        wrong = Proxy(f'{scheme}://{rest.partition("@")[2]}', auth=('user', 'wrong'))
        async with proxied(wrong) as request:
            for scheme in ('http', 'https'):
                with row((url, scheme)):
                    at = f'{scheme}://127.0.0.1:{origin[scheme]}/small'
                    if (name, scheme) == ('tinyproxy-basic', 'http'):
                        # It is the status of a server, so it is returned as one.
                        assert (await request(b'GET', at))[0] == b'401'
                        continue
                    with pytest.raises(HttpError) as caught:
                        await request(b'GET', at)
                    error = caught.value
                    assert isinstance(error.__cause__, ProxyError), error
                    assert is_lasting(error)
                    assert 'wrong' not in str(error)
                    if 'socks' not in url:
                        assert isinstance(error, HttpDataError) == (scheme == 'http')
                        assert error.__cause__.code in (b'407', b'401'), error


SAID = {
    'squid': {'refuses': b'503', 'unknown': b'500', 'forbidden': b'403'},
    'squid-basic': {'refuses': b'503', 'unknown': b'500', 'forbidden': b'403'},
    'squid-digest': {'refuses': b'503', 'unknown': b'500', 'forbidden': b'403'},
    'tinyproxy': {'refuses': b'500', 'unknown': b'500'},
    'tinyproxy-basic': {'refuses': b'500', 'unknown': b'500'},
    'dante': {'refuses': 'answered 5: the connection was refused',
              'unknown': 'answered 4: the host can not be reached',
              'forbidden': 'answered 2: its rules do not allow that'},
    'microsocks': {'refuses': 'answered 5: the connection was refused',
                   'unknown': 'answered 1: a general failure'},
    'microsocks-auth': {'refuses': 'answered 5: the connection was refused'},
}


@on_loops
async def test_what_each_proxy_says_when_it_can_not_connect(proxy):
    name, urls = proxy
    [port] = free_ports(1)
    hosts = {'refuses': f'127.0.0.1:{port}', 'unknown': 'nothing.invalid',
             'forbidden': '127.0.0.1:9'}
    for url in urls:
        async with proxied(url, socket_timeout=60) as request:
            for why, said in SAID[name].items():
                with row((url, why)):
                    with pytest.raises(HttpConnectionError) as caught:
                        await request(b'GET', f'https://{hosts[why]}/')
                    cause = caught.value.__cause__
                    assert isinstance(cause, ProxyError)
                    if isinstance(said, bytes):
                        assert cause.code == said, cause
                    else:
                        assert str(cause).endswith(said)
                    assert is_lasting(cause) == (why == 'forbidden')


# ------------------------------------------------------------------------------------------- curl

def tables():
    """Those of the layer's own tests."""
    path = ROOT / 'layers/proxy/test.py'
    spec = importlib.util.spec_from_file_location('test_of_lowhaio_proxy', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Noted:
    """A server in a thread that counts who comes, and answers all the same."""

    def __enter__(self):
        self.count = 0
        self.listener = socket.create_server(('127.0.0.1', 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()
        return self

    def serve(self):
        while True:
            sock, _ = self.listener.accept()
            with sock:
                if not sock.recv(65536):
                    return
                self.count += 1
                sock.sendall(b'HTTP/1.1 404 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n')

    def __exit__(self, *_):
        socket.create_connection(('127.0.0.1', self.port)).close()
        self.thread.join()
        self.listener.close()


def is_direct_by_curl(url, proxy, server, environ):
    before = proxy.count, server.count
    subprocess.run(
        ['curl', '-s', '-o', '/dev/null', '--max-time', '10',
         '--connect-to', f'::127.0.0.1:{server.port}', url],
        env={'PATH': PATH, **environ}, check=False, stdin=subprocess.DEVNULL)
    change = proxy.count - before[0], server.count - before[1]
    assert change in ((0, 1), (1, 0))
    return change == (0, 1)


def curl_version():
    output = subprocess.run(['curl', '--version'], capture_output=True, text=True, check=True)
    return tuple(int(part) for part in output.stdout.split()[1].split('.')[:2])


@needed('curl')
def test_curl_reads_no_proxy_in_the_same_way():
    layer = tables()
    rows = layer.NO_PROXY + (layer.NO_PROXY_OF_NEWER_CURL if curl_version() >= (8, 10) else [])
    with Noted() as proxy, Noted() as server:
        for host, no_proxy, is_direct in rows:
            with row((host, no_proxy)):
                assert is_direct_by_curl(f'http://{host}/', proxy, server, {
                    'http_proxy': f'http://127.0.0.1:{proxy.port}', 'no_proxy': no_proxy,
                }) == is_direct


VARIABLES = [
    'http_proxy', 'HTTP_PROXY', 'https_proxy', 'HTTPS_PROXY', 'all_proxy', 'ALL_PROXY',
    'Http_Proxy', 'http_proxy,REQUEST_METHOD', 'no_proxy,all_proxy', 'NO_PROXY,all_proxy',
    'no_proxy=,NO_PROXY,http_proxy', 'http_proxy=,all_proxy', 'https_proxy=,HTTPS_PROXY',
    'https_proxy=,HTTPS_PROXY=,ALL_PROXY', 'no_proxy=b,NO_PROXY,http_proxy,https_proxy',
]


@needed('curl')
def test_curl_reads_the_environment_in_the_same_way():
    with Noted() as proxy, Noted() as server:
        values = {'REQUEST_METHOD': 'GET', 'no_proxy': 'a.example', 'NO_PROXY': 'a.example'}
        for names in VARIABLES:
            environ = {}
            for name in names.split(','):
                name, is_given, value = name.partition('=')
                environ[name] = value if is_given else values.get(
                    name, f'http://127.0.0.1:{proxy.port}')
            choose = tables_choose(from_environment(environ))
            for scheme in ('http', 'https'):
                with row((names, scheme)):
                    assert is_direct_by_curl(
                        f'{scheme}://a.example/', proxy, server, environ) == (
                        choose(scheme, 'a.example', 80) is None)


def tables_choose(proxies):
    import lowhaio_proxy
    return lowhaio_proxy.chooser_of(proxies)
