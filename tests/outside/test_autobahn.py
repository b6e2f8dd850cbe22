"""lowhaio-websocket against the cases for clients of the Autobahn test suite

The server of the suite plays one case after the other: good frames, bad ones, fragments in every
order, texts that are no UTF-8, close frames with any code, compression with any parameters. The
client sends back each message that it gets, and the server judges it.

    LOWHAIO_TEST_AUTOBAHN=1 python -m pytest tests/outside/test_autobahn.py

The suite runs on Python 2.7 only, so this needs a `python2.7` with pip.
"""

import asyncio
import json
import os
import shutil
import socket
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from lowhaio import Pool
from lowhaio_websocket import WebSocketClosedError, websocket

AGENT = 'lowhaio'

# In seconds. Each is many times what it takes, and there so that a hang becomes a failure
INSTALL_TIMEOUT = 600
START_TIMEOUT = 60
TEST_TIMEOUT = 600
STOP_TIMEOUT = 10

# Those of speed, 9.*, are left out. Those of compression, 12.* and 13.*, differ in what is agreed
# on, their second number, and in the size and the fragments of a thousand messages, their third.
CASES = ['1.*', '2.*', '3.*', '4.*', '5.*', '6.*', '7.*', '10.*',
         '12.*.3', '12.*.7', '12.*.11', '13.*.3', '13.*.11']
NUMBER_OF_CASES = 276

# What came before a bad frame, in the same read, is not answered any more. So these depend on how
# the bytes arrive, and may be OK
NOT_STRICT_IN_ONE_READ = {
    '3.2', '3.3', '3.4', '4.1.3', '4.1.4', '4.1.5', '4.2.3', '4.2.4', '4.2.5', '5.15'}
# A text is checked frame by frame, not byte by byte
NOT_STRICT = {'6.4.3', '6.4.4'}
# What a client may do as it likes: after a close frame, and with a code that nobody has defined
INFORMATIONAL = {'7.1.6', '7.13.1', '7.13.2'}

# The suite would listen on all interfaces, on a port that it is told. Here it inherits a socket.
START = """
import socket, site, sys
site.addsitedir(sys.argv.pop(1))
descriptor = int(sys.argv.pop(1))
from twisted.internet import reactor
reactor.listenTCP = lambda port, factory, *args, **options: reactor.adoptStreamPort(
    descriptor, socket.AF_INET, factory)
from autobahntestsuite.wstest import run
run()
"""


@pytest.fixture(scope='module')
def python():
    """A Python 2.7"""
    if 'LOWHAIO_TEST_AUTOBAHN' not in os.environ:
        pytest.skip('the suite takes a minute, and Python 2.7: '
                    'it is run with LOWHAIO_TEST_AUTOBAHN=1')
    path = shutil.which('python2.7')
    if path is None:
        pytest.skip('python2.7 is not installed')
    return path


@pytest.fixture(scope='module')
def suite_path(python, tmp_path_factory):
    """The directory where the suite is installed"""
    directory = tmp_path_factory.mktemp('suite')
    ended = subprocess.run(
        [python, '-E', '-m', 'pip', '--disable-pip-version-check', 'install', '--quiet',
         '--no-deps', '--target', directory, '-r',
         Path(__file__).with_name('autobahn_requirements.txt')],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=INSTALL_TIMEOUT, check=False)
    if ended.returncode != 0:
        pytest.skip(f'python2.7 could not install the suite: {ended.stdout[-300:]}')
    return directory


@pytest.fixture
def url(python, suite_path, tmp_path):
    """Where the server of the suite listens. It writes its report to `reports`."""
    with socket.create_server(('127.0.0.1', 0)) as sock, \
            open(tmp_path / 'output', 'w') as output:
        sock.setblocking(False)
        url = f'ws://127.0.0.1:{sock.getsockname()[1]}'
        (tmp_path / 'spec.json').write_text(json.dumps({
            'url': url, 'options': {'failByDrop': False}, 'outdir': str(tmp_path / 'reports'),
            'cases': CASES, 'exclude-cases': [], 'exclude-agent-cases': {}}))
        process = subprocess.Popen(
            [python, '-E', '-c', START, suite_path, str(sock.fileno()),
             '--mode', 'fuzzingserver', '--spec', 'spec.json', '--webport', '0'],
            cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            pass_fds=[sock.fileno()])
    try:
        yield url
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        finally:
            process.kill()
            process.wait()
            # Shown if the test fails
            print((tmp_path / 'output').read_text())


async def answer_all(url):
    """Send back what comes in each case. Returns the number of cases."""
    # The first request waits until the server has started
    request, close = Pool(socket_timeout=START_TIMEOUT)

    async def ask(target):
        async with websocket(request, url + target) as ws:
            return json.loads(await ws.receive())

    async def run_case(number):
        case = (await ask(f'/getCaseInfo?case={number}'))['id']
        try:
            async with websocket(
                    request, url + f'/runCase?case={number}&agent={AGENT}',
                    compression=case.startswith(('12.', '13.'))) as ws:
                async for message in ws:
                    await ws.send(message)
        except WebSocketClosedError:
            # As most cases end. Whether it is how they have to end is for the server to judge
            pass

    async with asyncio.timeout(TEST_TIMEOUT):
        number_of_cases = await ask('/getCaseCount')
        for number in range(1, number_of_cases + 1):
            await run_case(number)
        async with websocket(request, url + f'/updateReports?agent={AGENT}') as ws:
            async for _ in ws:
                raise AssertionError
        await close()
    return number_of_cases


def test_all_cases(url, tmp_path):
    assert asyncio.run(answer_all(url)) == NUMBER_OF_CASES
    report = json.loads((tmp_path / 'reports' / 'index.json').read_text())[AGENT]
    print(Counter(judged['behavior'] for judged in report.values()))

    def cases(key, kind):
        return {case for case, judged in report.items() if judged[key] == kind}

    assert len(report) == NUMBER_OF_CASES
    not_strict = cases('behavior', 'NON-STRICT')
    assert NOT_STRICT <= not_strict <= NOT_STRICT | NOT_STRICT_IN_ONE_READ
    assert cases('behavior', 'INFORMATIONAL') == INFORMATIONAL
    assert cases('behavior', 'OK') == set(report) - not_strict - INFORMATIONAL
    # How the connection was closed
    assert cases('behaviorClose', 'INFORMATIONAL') == INFORMATIONAL
    assert cases('behaviorClose', 'OK') == set(report) - INFORMATIONAL
