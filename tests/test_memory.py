"""What is remembered or kept alive, and its limits."""

import asyncio
import contextvars
import gc
import json
import os
import socket
import subprocess
import sys
import threading
import tracemalloc
import weakref

import pytest

import lowhaio
from lowhaio import Pool, buffered
from tests.harness import (
    LOOPS,
    OK,
    PATIENCE,
    ROOT,
    Answering,
    Server,
    ThreadServer,
    get,
    head,
    on_loops,
    on_one_loop,
    pool,
    receive_head,
    turns,
    until,
)


# ------------------------------------------------------------------------------ what is remembered

SECRET_IN = {
    'set-cookie': ('/', b'set-cookie: a=SECRET'),
    'Set-Cookie among others': ('/', b'server: a\r\nSet-Cookie: a=SECRET; Secure\r\nage: 1'),
    'location': ('/', b'location: https://a.example/?signature=SECRET'),
    'a challenge': ('/', b'www-authenticate: Digest realm="a", nonce="SECRET"'),
    'authentication-info': ('/', b'authentication-info: nextnonce="SECRET"'),
    'a token in a field of its own': ('/', b'x-subject-token: SECRET'),
    'a folded line': ('/', b'set-cookie: a=b;\r\n c=SECRET'),
    'a long line': ('/', b'server: ' + 1024 * b'a' + b'SECRET'),
    'a long reason': ('/', 1024 * b'a' + b'SECRET'),
    'the query': ('/?signature=SECRET', b'age: 1'),
    'the fragment': ('/#access_token=SECRET', b'age: 1'),
    'a long path': ('/' + 256 * 'a' + 'SECRET', b'age: 1'),
    'a refused URL': ('@user:SECRET@a.example/', b'age: 1'),
    # Not all of it is remembered; but it is forgotten with the pool.
    'the path': ('/SECRET', b'age: 1'),
    'a trailer': ('/', b'transfer-encoding: chunked\r\n\r\n0\r\nset-cookie: a=SECRET'),
    'a repeated field': ('/', b'via: SECRET'),
}

KEPT_WITH_THE_POOL = {'the path', 'a trailer', 'a repeated field'}

KEEPING = """
import asyncio, contextlib, gc, json, re, socket, sys
from lowhaio import HttpError, Pool, buffered

def holders():
    # The secret of each row ends in the row's number, so one look at all objects finds those of
    # all rows. Nothing else than what lowhaio keeps has a secret with its number
    gc.collect()
    in_text = re.compile('secret([0-9][0-9])').findall
    in_data = re.compile(b'secret([0-9][0-9])').findall
    found = {}
    for holder in gc.get_objects():
        # What a module refers to is in its dictionary. In CPython 3.12, that of asyncio also tells
        # of futures that were freed, and to touch those breaks the next collection
        for held in () if type(holder) is type(gc) else gc.get_referents(holder):
            if isinstance(held, (str, bytes)):
                for number in in_text(held) if isinstance(held, str) else in_data(held):
                    found.setdefault(int(number), set()).add(type(holder).__name__)
    return {number: sorted(kinds) for number, kinds in found.items()}

async def main(secret_in):
    ends = []

    async def get_connection(*_):
        ours, theirs = socket.socketpair()
        ends.append(ours)
        return theirs

    def answer(line):
        end = ends[-1]
        end.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while end.recv(65536):
                pass
        start = b'' if b':' in line else b' ' + line
        end.send(b'HTTP/1.1 200' + start + (b'' if start else b'\\r\\n' + line) + (
            b'' if b'chunked' in line else b'\\r\\ncontent-length: 0') + b'\\r\\n\\r\\n')

    async def exchange(request, path, line, number):
        secret = f'secret{number:02}'
        asking = request(b'GET', 'http://name.test' + path.replace('SECRET', secret))
        task = asyncio.ensure_future(asking)
        for _ in range(5):
            await asyncio.sleep(0)
        if not task.done():
            answer(line.encode().replace(b'SECRET', secret.encode()))
        with contextlib.suppress(HttpError):
            await buffered((await task)[2])
        del task
        # The loop lets go of the task in its next turn
        await asyncio.sleep(0)

    pools = []
    for number, (path, line) in enumerate(secret_in.values()):
        pools.append(Pool(get_connection=get_connection))
        for _ in range(3):
            await exchange(pools[-1][0], path, line, number)
    with_pools = holders()
    while pools:
        await pools.pop()[1]()
    without = holders()
    return {name: (with_pools.get(number, []), without.get(number, []))
            for number, name in enumerate(secret_in)}

if sys.argv[1] == 'uvloop':
    from uvloop import new_event_loop
else:
    new_event_loop = None
with asyncio.Runner(loop_factory=new_event_loop) as runner:
    print(json.dumps(runner.run(main(json.loads(sys.argv[2])))))
"""


@pytest.mark.parametrize('loop_name', LOOPS)
def test_secrets_are_not_remembered_and_nothing_outlives_the_pool(loop_name):
    given = {name: (path, line.decode()) for name, (path, line) in SECRET_IN.items()}
    printed = subprocess.run(
        [sys.executable, '-c', KEEPING, loop_name, json.dumps(given)], check=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT)}, stdout=subprocess.PIPE, timeout=PATIENCE,
    ).stdout
    kept = json.loads(printed)
    assert {name: places for name, places in kept.items()
            if places != [[], []] and name not in KEPT_WITH_THE_POOL} == {}
    assert {name: places[1] for name, places in kept.items()} == {name: [] for name in SECRET_IN}


def heads_that_fill_memory(origin):
    """Each is as large as what is remembered may be, or larger, and none comes again."""
    for number in range(200):
        mark = b'%d-%d' % (origin, number)
        yield head(b'server: ' + mark, b'via: ' + mark.ljust(240, b'a'), b'content-length: 0',
                   start=b'HTTP/1.1 200 ' + mark.ljust(200, b'a'))
        yield head(b'server: ' + mark.ljust(14_000, b'a'), b'content-length: 0')


@on_one_loop
async def test_what_is_remembered_is_bounded_in_bytes():
    asyncio.get_running_loop().set_debug(False)

    async def fill(request, origins):
        for origin in origins:
            for number, raw in enumerate(heads_that_fill_memory(origin)):
                script.responses = [raw]
                query = '' if number % 4 else '?' + 'q' * 2000
                path = 'p' * (200 if number % 8 else 2000)
                method = b'M' * 40_000 if number % 4 == 1 else b'GET'
                _, _, body = await request(
                    method, f'http://{origin}.test:{number % 3 + 80}/{number}{path}{query}')
                await buffered(body)

    async def get_connection(scheme, host, port):
        sock = socket.create_connection(('127.0.0.1', server.port))
        sock.setblocking(False)
        return sock

    script = Answering(OK)
    async with Server(script) as server, pool(
            get_connection=get_connection, keep_alive_timeout=0) as request:
        await fill(request, range(1))  # what is made at first
        tracemalloc.start()
        try:
            await fill(request, range(1, 4))
            script.heads.clear()
            script.bodies.clear()
            server.peers.clear()
            server.tasks.clear()
            gc.collect()
            taken = tracemalloc.take_snapshot().filter_traces(
                [tracemalloc.Filter(True, lowhaio.__file__)])
        finally:
            tracemalloc.stop()
    # 512 of each: methods, URLs and lines, each 256 bytes at most and some overhead.
    assert sum(statistic.size for statistic in taken.statistics('filename')) < 1_500_000


@on_loops
async def test_a_connection_does_not_keep_the_context_of_its_request():
    """Neither while it is idle, nor while other requests use it."""
    class Value:
        pass

    variable = contextvars.ContextVar('variable')

    async def first(request):
        value = Value()
        variable.set(value)
        await get(request, server.url)
        return weakref.ref(value)

    async with Server(Answering(OK)) as server, pool(keep_alive_timeout=5) as request:
        kept = await asyncio.create_task(first(request))
        await turns(2)
        gc.collect()
        assert kept() is None
        await get(request, server.url)
        assert len(server.peers) == 1


# ------------------------------------------------------------------------------------------ bodies


@on_loops
async def test_an_iterated_body_holds_no_more_than_three_chunks():
    size = 32 * 1024
    taken, sent = threading.Event(), threading.Event()
    chunk = b'x' * size

    def script(sock):
        receive_head(sock)
        sock.sendall(head(b'content-length: %d' % (5 * size)))
        for pieces in (1, 4):
            assert taken.wait(PATIENCE)
            taken.clear()
            for _ in range(pieces):
                sock.sendall(chunk)
        sent.set()

    with ThreadServer(script) as server:
        async with pool(recv_bufsize=size) as request:
            _, _, body = await request(b'GET', server.url)
            received = 0
            tracemalloc.start()
            try:
                asyncio.get_running_loop().call_soon(taken.set)
                async for piece in body:
                    received += len(piece)
                    if received == size:
                        taken.set()
                        assert sent.wait(PATIENCE)
                _, most = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
    assert received == 5 * size
    # That of whoever iterates, that which is being received, and that which the loop has woken the
    # task with, until the task waits again.
    assert most < 3.5 * size


# -------------------------------------------------------------------------------- idle connections


@on_loops
async def test_a_pool_that_is_dropped_keeps_nothing_for_long():
    socks = weakref.WeakSet()

    def get_sock(family):
        sock = socket.socket(family)
        socks.add(sock)
        return sock

    async with Server(Answering(OK)) as server:
        request, _ = Pool(get_sock=get_sock, keep_alive_timeout=0.02)
        await get(request, server.url)
        del request, _
        gc.collect()
        await until(lambda: not socks)
