"""Tests of lowhaio_download: what is asked for, and what is on the disk afterwards."""

import asyncio
import base64
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import random
import re
import resource
import signal
import subprocess
import sys
import time
import tracemalloc
from email.utils import formatdate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowhaio_download
from lowhaio import HttpConnectionError, HttpDataError, HttpError, Phase
from lowhaio_download import (
    DownloadBusyError,
    Downloaded,
    DownloadDigestError,
    DownloadError,
    DownloadStatusError,
    download,
)
from lowhaio_redirect import redirectable
from lowhaio_retry import is_lasting
from tests.harness import (
    Answering,
    Server,
    ThreadServer,
    head,
    internet,
    on_loops,
    on_one_loop,
    pool,
    python_blocks,
    receive_head,
    response,
    run_block,
    turns,
    until,
    value,
)

CONTENT = random.Random(1).randbytes(1024)
OTHER = random.Random(2).randbytes(1024)
NOW = 1_800_000_000
DATE = formatdate(NOW, usegmt=True).encode()
OLD_DATE = formatdate(NOW - 60, usegmt=True).encode()
NEW_DATE = formatdate(NOW - 59, usegmt=True).encode()
ROOT = pathlib.Path(__file__).parents[2]


def whole(*fields, content=CONTENT, etag=b'"1"'):
    return response(200, content, *([b'etag: ' + etag] if etag else []), *fields)


def rest(start, *fields, stop=1024, total=1024, etag=b'"1"', code=206, content=CONTENT):
    return response(code, content[start:stop], *([b'etag: ' + etag] if etag else []),
                    b'content-range: bytes %d-%d/%d' % (start, stop - 1, total), *fields)


def cut(answer, length=100):
    """The beginning of a response, whose connection is then closed."""
    return answer[:answer.index(b'\r\n\r\n') + 4 + length], None


class Script(Answering):
    """As `Answering`, but each response is for one request. One with a None behind it closes the
    connection, and a list is sent piece by piece."""

    async def __call__(self, peer):
        while True:
            self.heads.append(await peer.read_head())
            answer = self.responses.pop(0)
            if answer is None:
                return
            if isinstance(answer, list):
                await peer.send(*answer)
            elif isinstance(answer, tuple):
                await peer.send(answer[0])
                return
            else:
                await peer.send(answer)

    @property
    def asked(self):
        """The ranges with their conditions."""
        assert {value(head, b'accept-encoding') for head in self.heads} <= {b'identity'}
        return [(value(head, b'range'), value(head, b'if-range')) for head in self.heads]


WHOLE = (None, None)


def ranged(start, validator=b'"1"'):
    return b'bytes=%d-' % start, validator


async def downloaded(path, *responses, pauses=(0,) * 5, fsync=False, **options):
    """The result or the error, and what was asked for. All responses must have been sent.

    Nobody waits for the disk where that makes no difference.
    """
    script = Script(*responses)
    async with Server(script) as server, pool() as request:
        try:
            result = await download(request, server.url, path, pauses=pauses, jitter=0,
                                    fsync=fsync, resource='test', **options)
        except (DownloadError, HttpError, OSError) as error:
            result = error
        if isinstance(result, Exception):
            result.text = str(result).replace(server.origin, 'ORIGIN').replace(str(path), 'PATH')
    assert script.responses == []
    return result, script.asked


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'file'


@pytest.fixture
def part(tmp_path):
    return tmp_path / 'file.part'


@pytest.fixture
def slept(monkeypatch):
    """Lets no time pass, but notes the seconds that would have been waited."""
    seconds = []
    sleep = asyncio.sleep

    async def sleep_at_once(delay):
        seconds.append(delay)
        await sleep(0)

    monkeypatch.setattr(lowhaio_download, 'sleep', sleep_at_once)
    monkeypatch.setattr(time, 'time', lambda: NOW)
    return seconds


def assert_whole(path, content=CONTENT):
    """The file, and nothing beside it."""
    assert path.read_bytes() == content
    assert [*path.parent.iterdir()] == [path]


async def begin(path, *fields, length=100, fsync=False, **options):
    """A download that another run of the program has left."""
    error, asked = await downloaded(
        path, cut(whole(*fields, **options), length), pauses=(), fsync=fsync)
    assert type(error) is DownloadError
    assert asked == [WHOLE]
    return error


# ---------------------------------------------------------------------------------- whole files

@on_loops
async def test_a_file(path):
    path.write_bytes(b'an earlier one')
    progress = []
    script = Answering(whole())
    async with Server(script) as server, pool() as request:
        url = f'{server.url}file?secret#fragment'
        done = await download(request, url, str(path), params=(('a', 'b'),),
                              headers=((b'x', b'y'),), timeouts={'read': 3},
                              on_progress=lambda *told: progress.append(told))
    assert_whole(path)
    assert done == Downloaded(path, 1024, 0, (), (
        (b'etag', b'"1"'), (b'content-length', b'1024')), url)
    assert repr(done) == f'Downloaded(path={path!r}, size=1024, resumed_from=0, verified=())'
    assert progress == [(1024, 1024)]
    assert script.lines == ['GET /file?secret&a=b']
    assert value(script.heads[0], b'x') == b'y'


@on_loops
async def test_a_file_has_the_mode_of_a_new_one(path):
    before = os.umask(0o027)
    try:
        await downloaded(path, whole())
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize('fsync', [True, False])
@on_loops
async def test_a_file_without_content(fsync, path):
    done, asked = await downloaded(path, whole(content=b''), fsync=fsync)
    assert (done.size, asked) == (0, [WHOLE])
    assert_whole(path, b'')


@on_loops
async def test_a_file_whose_length_is_not_told(path):
    progress = []
    done, _ = await downloaded(
        path, (head(b'transfer-encoding: chunked') + b'3\r\nabc\r\n0\r\n\r\n', None),
        on_progress=lambda *told: progress.append(told))
    assert (done.size, progress) == (3, [(3, None)])
    assert_whole(path, b'abc')


@on_loops
async def test_a_path_that_can_not_be_written_is_told_before_anything_is_asked_for(
        tmp_path, path, part):
    for bad, number in ((tmp_path, errno.EISDIR), (tmp_path / 'a' / 'b', errno.ENOENT)):
        error, asked = await downloaded(bad)
        assert (error.errno, asked) == (number, [])
    part.symlink_to('elsewhere')
    assert (await downloaded(path))[0].errno == errno.ELOOP
    part.unlink()
    os.mkfifo(part)
    error, asked = await downloaded(path)
    assert (error.text, asked) == ('PATH.part is there, and it is no file', [])
    part.unlink()
    (tmp_path / 'file.part-state').mkdir()
    assert (await downloaded(path))[0].errno == errno.EISDIR
    assert not part.exists()
    part.write_bytes(b'a')
    assert (await downloaded(path))[0].errno == errno.EISDIR
    assert part.read_bytes() == b'a'


@on_one_loop
async def test_what_is_no_file_is_not_replaced(path, tmp_path):
    os.mkfifo(path)
    error, asked = await downloaded(path)
    assert (error.text, asked) == ('PATH is there, and it is no file', [])
    assert [*tmp_path.iterdir()] == [path]
    assert path.is_fifo()
    link = tmp_path / 'link'
    link.symlink_to(path)
    await downloaded(link, whole())
    assert link.read_bytes() == CONTENT
    assert path.is_fifo()


@on_one_loop
async def test_the_current_folder_may_change_meanwhile(path, part, tmp_path, monkeypatch):
    (tmp_path / 'folder').mkdir()
    monkeypatch.chdir(tmp_path)
    done, _ = await downloaded(
        'file', whole(), fsync=True, on_progress=lambda *_: os.chdir('folder'))
    assert done.path == path
    assert path.read_bytes() == CONTENT
    assert not part.exists()


@on_one_loop
async def test_a_state_that_can_not_be_read_leaves_nothing_open(path, part, tmp_path):
    """Otherwise the part would be locked as long as this process lives."""
    state = tmp_path / 'file.part-state'
    os.mkfifo(state)
    for _ in range(2):
        error, asked = await downloaded(path)
        assert (error.errno, asked) == (errno.ESPIPE, [])
        assert not part.exists()
    state.unlink()
    await downloaded(path, whole())
    assert_whole(path)


@on_one_loop
async def test_a_name_that_is_too_long_leaves_nothing(tmp_path):
    for length in 246, 251, 256:
        error, _ = await downloaded(tmp_path / ('a' * length))
        assert error.errno == errno.ENAMETOOLONG
    assert not [*tmp_path.iterdir()]


@on_one_loop
async def test_what_can_not_be_removed_leaves_nothing_open(path, part):
    def replaced(done, total):
        part.unlink()
        part.mkdir()
        raise ValueError('no more')

    async with Server(Answering(whole())) as server, pool() as request:
        with pytest.raises(IsADirectoryError) as got:
            await download(request, server.url, path, keep_partial=False, on_progress=replaced)
    assert str(got.value.__context__) == 'no more'
    part.rmdir()
    await downloaded(path, whole())
    assert_whole(path)


@pytest.mark.parametrize('options, message', [
    ({'digest': ('sha999', b'')}, "digest must have an algorithm of hashlib, got 'sha999'"),
    ({'digest': ('shake_128', b'')}, "digest must have an algorithm of hashlib, got 'shake_128'"),
    ({'digest': ('sha256', 'xyz')}, 'digest must be bytes or hex, got other characters'),
    ({'digest': ('sha256', b'a')}, 'digest must have 32 bytes for sha256, got 1'),
    ({'pauses': (1, -1)}, 'download needs numbers, 0 or more, got -1'),
    ({'jitter': None}, 'download needs numbers, 0 or more, got None'),
    ({'max_retry_after': float('inf')}, 'download needs numbers, 0 or more, got inf'),
    ({'parallel': 0}, 'parallel must be a whole number, 1 or more, got 0'),
    ({'part_size': 0.5}, 'part_size must be a whole number, 1 or more, got 0.5'),
    ({'on_progress': 1}, 'download needs functions, got 1'),
    ({'on_retry': 1}, 'download needs functions, got 1'),
    ({'headers': ((b'Range', b'bytes=0-'),)},
     "headers must not have b'Range', because download sends its own"),
])
@on_one_loop
async def test_what_is_refused(options, message, path):
    with pytest.raises((TypeError, ValueError), match=f'^{re.escape(message)}$'):
        await download(None, 'http://a/', path, **options)
    assert not [*path.parent.iterdir()]


@on_one_loop
async def test_after_a_request_was_sent_no_error_tells_that_nothing_was(path):
    """The second request fails before it is sent, and in a way that would come again."""
    async def refused_later(method, url, **kwargs):
        return await request(method, url, **kwargs,
                             timeouts={'nonsense': 1} if script.heads else {})

    for first in cut(whole()), None:
        script = Script(first)
        async with Server(script) as server, pool() as request:
            with pytest.raises(HttpDataError, match='again: GET .* refused: timeouts') as got:
                await download(refused_later, server.url, path, pauses=(0,), fsync=False)
        assert type(got.value) is HttpDataError
        assert type(got.value.__cause__) is HttpConnectionError
        assert got.value.phase == Phase.REFUSED
        assert is_lasting(got.value)


@on_one_loop
async def test_a_url_that_can_not_be_encoded_is_refused_and_not_shown(path):
    async with pool() as request:
        with pytest.raises(HttpConnectionError, match='but has a lone surrogate$') as got:
            await download(request, 'http://a.example/?secret\ud800', path)
    assert 'secret' not in f'{got.value!r}{got.value.__cause__!r}'
    assert not [*path.parent.iterdir()]


@pytest.mark.parametrize('parallel', [1, 3])
@pytest.mark.parametrize('kind', [HttpDataError, HttpConnectionError, KeyError])
@on_one_loop
async def test_what_on_progress_raises_ends_the_download_whatever_it_is(parallel, kind, path):
    def stop(done, total):
        raise kind('no more')

    origin = Origin()
    with pytest.raises(kind, match='^.?no more.?$'):
        await in_parallel(origin, path, parallel=parallel, on_progress=stop)
    assert len(origin.asked) <= parallel


# ---------------------------------------------------------------------------------- going on

MULTIPART = response(206, b'--a', b'content-type: multipart/byteranges; boundary=a', b'etag: "1"')


RESUMED = {
    # The responses to the next run, what was asked for, and how much was used of what was there.
    'the rest': ([rest(100)], [ranged(100)], 100),
    'the rest in pieces': ([rest(100, stop=200), rest(200, stop=300), rest(300)],
                           [ranged(100), ranged(200), ranged(300)], 100),
    'the rest, cut off': ([cut(rest(100)), rest(200)], [ranged(100), ranged(200)], 100),
    'the rest, with 200': ([rest(100, code=200)], [ranged(100)], 100),
    'the rest, chunked': (
        [head(b'etag: "1"', b'content-range: bytes 100-1023/1024', b'transfer-encoding: chunked',
              start=b'HTTP/1.1 206 x') + b'39c\r\n' + CONTENT[100:] + b'\r\n0\r\n\r\n'],
        [ranged(100)], 100),
    'the rest, chunked, less': (
        [head(b'etag: "1"', b'content-range: bytes 100-1023/1024', b'transfer-encoding: chunked',
              start=b'HTTP/1.1 206 x') + b'1\r\n' + CONTENT[100:101] + b'\r\n0\r\n\r\n',
         rest(101)], [ranged(100), ranged(101)], 100),
    'the rest, chunked, more': (
        [(head(b'etag: "1"', b'content-range: bytes 100-100/1024', b'transfer-encoding: chunked',
               start=b'HTTP/1.1 206 x') + b'2\r\nab\r\n0\r\n\r\n', None),
         whole()], [ranged(100), WHOLE], 0),
    'no ranges': ([whole()], [ranged(100)], 0),
    'it has changed': ([whole(etag=b'"2"')], [ranged(100)], 0),
    'it has changed, and if-range is not known':
        ([rest(100, etag=b'"2"'), whole()], [ranged(100), WHOLE], 0),
    'it has changed, with 200':
        ([rest(100, etag=b'"2"', code=200), whole()], [ranged(100), WHOLE], 0),
    'its etag is weak now': ([rest(100, etag=b'W/"1"'), whole()], [ranged(100), WHOLE], 0),
    'it has no etag now': ([rest(100, etag=b''), whole()], [ranged(100), WHOLE], 0),
    'it has two etags now':
        ([rest(100, b'etag: "2"'), whole()], [ranged(100), WHOLE], 0),
    'another length': ([rest(100, total=2000), whole()], [ranged(100), WHOLE], 0),
    'another range': ([rest(99), whole()], [ranged(100), WHOLE], 0),
    'no range': ([response(206, b'a', b'etag: "1"'), whole()], [ranged(100), WHOLE], 0),
    'two ranges': ([rest(100, b'content-range: bytes 1-2/3'), whole()], [ranged(100), WHOLE], 0),
    'an unknown length': (
        [response(206, CONTENT[100:], b'etag: "1"', b'content-range: bytes 100-1023/*'), whole()],
        [ranged(100), WHOLE], 0),
    'a range that there can not be': (
        [response(206, b'a', b'etag: "1"', b'content-range: bytes 100-99/1024'), whole()],
        [ranged(100), WHOLE], 0),
    'a range with another length':
        ([rest(100, content=CONTENT + b'a', stop=1025).replace(b'-1024/1024', b'-1023/1024'),
          whole()], [ranged(100), WHOLE], 0),
    'several ranges': ([MULTIPART, whole()], [ranged(100), WHOLE], 0),
    'coded': ([rest(100, b'content-encoding: gzip'), whole()], [ranged(100), WHOLE], 0),
    'not coded': ([rest(100, b'content-encoding: Identity')], [ranged(100)], 100),
    'it is shorter': ([response(416, b'', b'content-range: bytes */50'), whole()],
                      [ranged(100), WHOLE], 0),
    'it is all there': (
        [response(416, b'', b'etag: "1"', b'content-range: bytes */100')], [ranged(100)], 100),
    'another one is as long as what is there': (
        [response(416, b'', b'etag: "2"', b'content-range: bytes */100'), whole()],
        [ranged(100), WHOLE], 0),
    'it is as long, and it may be another one': (
        [response(416, b'', b'content-range: bytes */100'), whole()], [ranged(100), WHOLE], 0),
    'a condition that failed': ([response(412), whole()], [ranged(100), WHOLE], 0),
    'the server is busy': ([response(503), response(429), response(408), rest(100)],
                           [ranged(100)] * 4, 100),
    'no response': ([None, None, rest(100)], [ranged(100)] * 3, 100),
}


@pytest.mark.parametrize('case', RESUMED)
@on_one_loop
async def test_a_download_goes_on_where_an_earlier_run_has_ended(case, path, part):
    responses, asked, resumed_from = RESUMED[case]
    path.write_bytes(b'an earlier one')
    await begin(path)
    assert path.read_bytes() == b'an earlier one'
    assert part.read_bytes() == CONTENT[:100]
    done, was_asked = await downloaded(path, *responses)
    assert was_asked == asked
    assert done.resumed_from == resumed_from
    assert_whole(path, CONTENT[:100] if case == 'it is all there' else CONTENT)


@pytest.mark.parametrize('fields, etag, validator', [
    ((b'date: ' + DATE, b'last-modified: ' + OLD_DATE), b'', OLD_DATE),
    ((b'date: ' + DATE, b'last-modified: ' + NEW_DATE), b'', None),
    ((b'date: ' + DATE, b'last-modified: ' + OLD_DATE), b'W/"1"', None),
    ((b'date: ' + DATE, b'last-modified: ' + OLD_DATE), b'"1"', b'"1"'),
    ((b'last-modified: ' + OLD_DATE,), b'', None),
    ((b'date: x', b'last-modified: ' + OLD_DATE), b'', None),
    ((b'date: ' + DATE, b'last-modified: x'), b'', None),
    ((b'date: ' + DATE, b'last-modified: Mon, 1 Jan 0001 00:00:00 +2300'), b'', None),
    ((b'date: ' + DATE, b'last-modified: Mon, 1 Jan 2001 00:00:00 +0000'), b'', None),
    ((), b'1', None),
    ((), b'""', b'""'),
    ((b'etag: "2"',), b'"1"', None),
    ((b'etag: "1"',), b'"1"', b'"1"'),
    ((), b'', None),
])
@on_one_loop
async def test_what_is_a_strong_validator(fields, etag, validator, path, part):
    await begin(path, *fields, etag=etag)
    if validator is None:
        # What no later run could use is not left.
        assert not [*path.parent.iterdir()]
        _, asked = await downloaded(path, whole())
        assert asked == [WHOLE]
    else:
        assert part.read_bytes() == CONTENT[:100]
        _, asked = await downloaded(path, rest(100, *fields, etag=etag))
        assert asked == [ranged(100, validator)]
    assert_whole(path)


@on_loops
async def test_the_last_byte_is_asked_for_again_if_it_may_be_all(path, part):
    unknown = head(b'etag: "1"') + CONTENT
    chunk = head(b'etag: "1"', b'transfer-encoding: chunked') + b'400\r\n' + CONTENT
    assert type((await downloaded(path, (chunk, None), pauses=()))[0]) is DownloadError
    # It ends as if it was whole, which a later run can not know of the one that was cut off.
    done, asked = await downloaded(path, rest(1023))
    assert (done.resumed_from, done.size, asked) == (1024, 1024, [ranged(1023)])
    assert_whole(path)
    await downloaded(path, (unknown, None))
    assert_whole(path)


@on_loops
async def test_a_file_of_unknown_length_goes_on(path):
    chunk = head(b'etag: "1"', b'transfer-encoding: chunked') + b'64\r\n' + CONTENT[:100]
    done, asked = await downloaded(path, (chunk, None), cut(rest(99), 1), rest(100))
    assert asked == [WHOLE, ranged(99), ranged(100)]
    assert_whole(path)


@pytest.mark.parametrize('change', [
    {'url': 'other'}, {'params': (('a', 'b'),)}, {'target': b'/other'}])
@on_one_loop
async def test_a_part_of_another_url_is_not_used(change, path):
    script = Script(cut(whole()), cut(whole()), rest(100), cut(whole()), rest(100))
    async with Server(script) as server, pool() as request:
        for resource, more in ((None, {}), (None, change), (None, change),
                               ('name', {}), ('name', change)):
            with contextlib.suppress(DownloadError):
                more = dict(more)
                await download(request, server.url + more.pop('url', ''), path, pauses=(),
                               resource=resource, **more)
    assert script.asked == [WHOLE, WHOLE, ranged(100), WHOLE, ranged(100)]
    assert_whole(path)


@on_one_loop
async def test_a_redirect_to_another_origin_is_followed_each_time(path):
    def moved(head, body):
        return response(302, b'', b'location: ' + there.url.encode())

    script, here = Script(cut(whole()), rest(100)), Answering(moved)
    async with Server(script) as there, Server(here) as server, pool() as request:
        await download(redirectable(request), server.url, path, pauses=(0,))
    assert script.asked == [WHOLE, ranged(100)]
    assert len(here.heads) == 2
    assert_whole(path)


STATES = {
    'nothing': b'', 'no JSON': b'{\n', 'no object': b'[]\n', 'no text': b'\xff\n',
    'no line end': b'{"resource": "test"}', 'no fields': b'{}\n',
    'too deep': b'[' * 100_000 + b'\n',
}


@pytest.mark.parametrize('change', [
    *STATES, 'resource', 'validator', 'total', 'digests', 'sparse'])
@on_one_loop
async def test_a_state_that_was_not_written_here(change, path, part):
    await begin(path)
    state = path.with_name('file.part-state')
    told = json.loads(state.read_bytes())
    state.write_bytes(STATES.get(change) if change in STATES else json.dumps(
        {**told, 'total': None, change: {'total': 'a'}.get(change, 1)}).encode() + b'\n')
    _, asked = await downloaded(path, whole())
    assert asked == [WHOLE]
    assert_whole(path)


@on_loops
async def test_a_part_without_state_and_a_state_without_part(path, part):
    part.write_bytes(b'something else')
    assert (await downloaded(path, whole()))[1] == [WHOLE]
    await begin(path)
    part.unlink()
    assert (await downloaded(path, whole()))[1] == [WHOLE]
    assert_whole(path)


@on_loops
async def test_a_line_that_was_cut_off_does_not_count(path):
    await begin(path)
    state = path.with_name('file.part-state')
    state.write_bytes(state.read_bytes() + b'{"sync')
    await begin_rest(path)
    assert b'sync' not in state.read_bytes()


async def begin_rest(path):
    error, asked = await downloaded(path, cut(rest(100)), pauses=())
    assert asked == [ranged(100)]


@on_loops
async def test_after_another_boot_only_what_the_disk_had_counts(path, monkeypatch):
    monkeypatch.setattr(lowhaio_download, 'SYNC_SIZE', 100)
    await begin(path, fsync=True)
    state = path.with_name('file.part-state')
    lines = [json.loads(line) for line in state.read_bytes().splitlines()]
    assert lines[1:] == [{'synced': [[0, 100]]}]
    monkeypatch.setattr(lowhaio_download, 'SYNC_SIZE', 10 ** 6)
    error, asked = await downloaded(path, cut(rest(100)), pauses=())
    assert asked == [ranged(100)]
    lines[0]['boot'] = 'another one'
    state.write_text(''.join(f'{json.dumps(line)}\n' for line in lines))
    error, asked = await downloaded(path, cut(rest(100)), pauses=())
    assert asked == [ranged(100)]
    lines = [json.loads(line) for line in state.read_bytes().splitlines()]
    state.write_text(json.dumps({**lines[0], 'boot': 'another one'}) + '\n')
    assert (await downloaded(path, whole()))[1] == [WHOLE]
    assert_whole(path)


@on_loops
async def test_a_system_that_does_not_tell_its_boot(path, monkeypatch):
    monkeypatch.setattr(lowhaio_download, 'BOOT_ID', str(path))
    await begin(path)
    _, asked = await downloaded(path, rest(100))
    assert asked == [ranged(100)]


@on_loops
async def test_what_is_not_to_be_kept(path):
    await downloaded(path, cut(whole()), pauses=(), keep_partial=False)
    assert not [*path.parent.iterdir()]


# ------------------------------------------------------------------------------------- attempts

@on_loops
async def test_pauses_grow_and_begin_anew_when_bytes_have_come(slept, path):
    retries = []
    script = Script(None, response(503), cut(whole()), None, None, cut(rest(100)), None, rest(200))
    async with Server(script) as server, pool() as request:
        await download(request, server.url, path, pauses=(1, 2, 4),
                       on_retry=lambda *told: retries.append(told))
    assert_whole(path)
    assert [1 <= seconds / pause <= 1.5 for seconds, pause in zip(
        slept, (1, 2, 1, 2, 4, 1, 2), strict=True)] == [True] * 7
    assert [count for count, _, _ in retries] == [1, 2, 1, 2, 3, 1, 2]
    assert [seconds for _, seconds, _ in retries] == slept
    assert str(retries[1][2]) == "the server answered 503: b''"


@on_loops
async def test_a_server_without_an_end(path, part):
    """The first bytes again and again are no progress, and nor is nothing."""
    error, asked = await downloaded(path, *[cut(whole(etag=b''))] * 3, pauses=(0, 0))
    assert asked == [WHOLE] * 3
    assert error.text.startswith(
        'GET ORIGIN to PATH: the last attempts, 3, failed, and 0 bytes are there: GET ORIGIN')
    assert isinstance(error.__cause__, HttpDataError)
    assert not [*path.parent.iterdir()]
    error, asked = await downloaded(path, cut(whole()), *[cut(rest(100), 0)] * 2, pauses=(0, 0))
    assert asked == [WHOLE, *[ranged(100)] * 2]


@on_loops
async def test_a_range_without_content_is_no_progress(path):
    nothing = head(b'etag: "1"', b'content-range: bytes 100-1023/1024',
                   b'transfer-encoding: chunked', start=b'HTTP/1.1 206 x') + b'0\r\n\r\n'
    await begin(path)
    error, asked = await downloaded(path, *[nothing] * 3, pauses=(0, 0))
    assert asked == [ranged(100)] * 3
    assert error.text == ('GET ORIGIN to PATH: the last attempts, 3, failed, and 100 bytes are '
                          'there: 924 bytes of the 924 of a response are missing')


@on_loops
async def test_a_file_that_changes_all_the_time(path):
    changed = 'the whole file came in place of the rest'
    for pauses in (0,), (0, 0):
        versions = [cut(whole(etag=b'"%d"' % number)) for number in range(len(pauses) + 2)]
        error, _ = await downloaded(path, *versions, pauses=pauses)
        assert error.text == (f'GET ORIGIN to PATH: gave up after {len(pauses)} times that all '
                              f'began anew: {changed}')
        assert str(error.__cause__) == changed
        path.with_name('file.part').unlink()


@on_loops
async def test_a_connection_that_fails(path):
    async with Server(None) as server:
        url = server.url
    async with pool() as request:
        with pytest.raises(DownloadError, match='the last attempts, 2, failed') as raised:
            await download(request, url, path, pauses=(0,))
        assert isinstance(raised.value.__cause__, HttpConnectionError)
        with pytest.raises(HttpConnectionError, match='userinfo|credentials'):
            await download(request, 'http://a:b@c/', path)
    assert not [*path.parent.iterdir()]


# ------------------------------------------------------------------------------------- statuses

@pytest.mark.parametrize('answer, told', [
    (response(404, b'no such file'), "404: b'no such file'"),
    (response(302), "302, and redirects are only followed with lowhaio-redirect around the "
                    "request: b''"),
    (response(304), "304: b''"),
    (response(204).replace(b'content-length: 0\r\n', b''), "204: b''"),
    (response(503, b'', b'retry-after: 121'), "503, and wants 121 seconds to pass: b''"),
    (rest(0), f"206 with a range that was not asked for: {CONTENT[:200]!r}"),
    (rest(0, code=200), f"200 with a range that was not asked for: {CONTENT[:200]!r}"),
    (response(416, b'no'), "416: b'no'"),
    (response(412, b'no'), "412: b'no'"),
])
@on_one_loop
async def test_a_status_that_is_no_file(answer, told, path):
    path.write_bytes(b'an earlier one')
    error, asked = await downloaded(path, answer)
    assert (type(error), asked) == (DownloadStatusError, [WHOLE])
    assert error.text == f'GET ORIGIN to PATH: the server answered {told}'
    assert error.code == answer.split()[1]
    assert error.content == answer.partition(b'\r\n\r\n')[2]
    assert_whole(path, b'an earlier one')


@on_one_loop
async def test_a_status_that_is_no_file_leaves_what_is_there(path, part):
    await begin(path)
    error, asked = await downloaded(path, response(404))
    assert (error.code, asked, part.read_bytes()) == (b'404', [ranged(100)], CONTENT[:100])


@on_one_loop
async def test_the_content_of_an_error_is_bounded(path, monkeypatch):
    error, _ = await downloaded(path, (
        head(b'content-length: 1000000', start=b'HTTP/1.1 404 x') + bytes(100_000), None))
    assert error.content == bytes(1024)
    error, _ = await downloaded(path, cut(response(404, CONTENT)))
    assert error.content == CONTENT[:100]

    async def waiting(peer):
        await peer.read_head()
        await peer.send(head(b'content-length: 9', start=b'HTTP/1.1 404 x') + b'some')
        await peer.closed()

    monkeypatch.setattr(lowhaio_download, 'DRAIN_TIMEOUT', 0.01)
    async with Server(waiting) as server, pool() as request:
        with pytest.raises(DownloadStatusError) as raised:
            await download(request, server.url, path)
    assert raised.value.content == b'some'


@pytest.mark.parametrize('field, seconds', [
    (b'retry-after: 7', 7), (b'retry-after: x', 0), (b'x: 7', 0), (b'retry-after: ' + DATE, 0),
    (b'retry-after: ' + formatdate(NOW + 9, usegmt=True).encode(), 9),
    (b'date: %b\r\nretry-after: %b' % (OLD_DATE, DATE), 60),
])
@on_one_loop
async def test_how_long_a_server_wants_a_client_to_wait(field, seconds, slept, path):
    await downloaded(path, response(429, b'', field), whole())
    assert slept == [seconds]
    assert_whole(path)


@on_one_loop
async def test_coded_content_is_no_file(path):
    error, _ = await downloaded(path, whole(b'content-encoding: gzip', b'content-encoding: br'))
    assert (type(error), error.text) == (DownloadError, (
        'GET ORIGIN to PATH: expected content without a coding, got content-encoding: gzip, br'))


# ------------------------------------------------------------------------------------- digests

def sf(digest):
    return b':' + base64.b64encode(digest) + b':'


SHA256, SHA512 = hashlib.sha256(CONTENT).digest(), hashlib.sha512(CONTENT).digest()
ZEROS = sf(bytes(32))
REPR = b'repr-digest: sha-256=' + sf(SHA256)
WRONG = b'repr-digest: sha-256=' + ZEROS
SAYS = f'says {bytes(32).hex()}'


@pytest.mark.parametrize('text, verified', [
    (b'sha-256=%b' % sf(SHA256), ('sha256',)),
    (b'sha-512=%b , \t sha-256=%b' % (sf(SHA512), sf(SHA256)), ('sha256', 'sha512')),
    (b'sha-256=%b, sha-256=%b' % (ZEROS, sf(SHA256)), ('sha256',)),
    (b'sha-256=%b' % sf(SHA256).replace(b'=', b''), ('sha256',)),
    (b'sha-256=%b;a;b=1; c="x, y";d=?0' % sf(SHA256), ('sha256',)),
    (b'md5=:AAAA:, a, b=1, c=-1.5, d="\\"=,", e=(1 "a,b";q=x  :YQ==:), f=();g, h=@17, '
     b'i=%%"a%%20b", j=t/o:k, *k=?1, sha-256=%b' % sf(SHA256), ('sha256',)),
    (b'', ()),
    (b'sha-256', ()),
    (b'sha-256="x"', ()),
    (b'sha-256=%b,' % ZEROS, ()),
    (b'sha-256=%b, =' % ZEROS, ()),
    (b'sha-256=%b, a="' % ZEROS, ()),
    (b'SHA-256=%b' % ZEROS, ()),
    (b'sha-256=%b a' % ZEROS, ()),
    (b'sha-256=:A:', ()),
    (b'sha-256 =%b' % ZEROS, ()),
    (b'sha-1=%b' % ZEROS, ()),
])
@on_one_loop
async def test_the_digest_of_the_representation(text, verified, path):
    done, _ = await downloaded(path, whole(b'repr-digest: ' + text))
    assert done.verified == verified
    assert_whole(path)


@on_loops
async def test_another_digest_is_an_error(path):
    path.write_bytes(b'an earlier one')
    wrong = (f'digest of the WHO is sha256 {bytes(32).hex()}, but what came has '
             f'{SHA256.hex()}')
    error, _ = await downloaded(path, whole(WRONG))
    assert (type(error), error.text) == (
        DownloadDigestError, f'GET ORIGIN to PATH: the {wrong.replace("WHO", "server")}')
    error, _ = await downloaded(path, whole(REPR), digest=('sha256', bytes(32)))
    assert error.text == f'GET ORIGIN to PATH: the {wrong.replace("WHO", "caller")}'
    assert_whole(path, b'an earlier one')


@on_loops
async def test_a_digest_of_the_caller(path):
    done, _ = await downloaded(path, whole(REPR), digest=('blake2b', hashlib.blake2b(
        CONTENT).hexdigest()))
    assert done.verified == ('blake2b', 'sha256')
    assert_whole(path)


@on_one_loop
async def test_digests_in_trailers(path):
    trailers = b'content-digest: sha-256=%b\r\n%b\r\n' % (sf(SHA256), REPR)
    chunked = head(b'transfer-encoding: chunked') + b'400\r\n%b\r\n0\r\n%b\r\n'
    done, _ = await downloaded(path, chunked % (CONTENT, trailers))
    assert done.verified == ('sha256',)
    error, _ = await downloaded(path, chunked % (OTHER, trailers), pauses=())
    assert type(error) is DownloadDigestError
    assert_whole(path)


@on_one_loop
async def test_what_an_earlier_run_has_left_may_be_what_has_the_wrong_digest(path, part):
    await begin(path, REPR)
    part.write_bytes(OTHER[:100])
    done, asked = await downloaded(path, rest(100), whole(REPR))
    assert (asked, done.verified, done.resumed_from) == ([ranged(100), WHOLE], ('sha256',), 0)
    assert_whole(path)


@on_one_loop
async def test_another_digest_is_another_version(path):
    await begin(path, REPR)
    done, asked = await downloaded(path, rest(100, WRONG), whole())
    assert asked == [ranged(100), WHOLE]
    assert_whole(path)


@on_one_loop
async def test_the_digest_of_the_content_of_one_response(path, part):
    """A range has its own. What has another one is not kept."""
    def digest(start):
        return b'content-digest: sha-256=' + sf(hashlib.sha256(CONTENT[start:]).digest())

    progress = []
    wrong = b'content-digest: sha-256=' + ZEROS
    done, asked = await downloaded(
        path, whole(wrong), cut(whole(digest(0))), rest(100, wrong), cut(rest(100, digest(100))),
        rest(200, digest(200)), on_progress=lambda *told: progress.append(told[0]))
    assert asked == [WHOLE, WHOLE, ranged(100), ranged(100), ranged(200)]
    assert progress == [1024, 100, 1024, 200, 1024]
    assert_whole(path)
    error, _ = await downloaded(path, whole(wrong), pauses=())
    assert (type(error), error.text) == (DownloadDigestError, (
        'GET ORIGIN to PATH: the last attempts, 1, failed, and 0 bytes are there: '
        f'content-digest is sha256 {bytes(32).hex()}, but what came has {SHA256.hex()}'))
    assert_whole(path)


# --------------------------------------------------------------------------------- several at once

class Origin:
    """A script of a server with ranges and `if-range`, as it should be. `cuts` are how many bytes
    of the content come, one for each response; None is all. `changes` are other versions of the
    content, by the number of the response before which they come."""

    def __init__(self, content=CONTENT, cuts=(), changes=(), fields=()):
        self.content = content
        self.cuts = list(cuts)
        self.changes = dict(changes)
        self.fields = fields
        self.version = self.count = 0
        self.asked = []

    def answer(self, asked):
        self.count += 1
        if self.count in self.changes:
            self.version, self.content = self.count, self.changes[self.count]
        wanted, condition = value(asked, b'range'), value(asked, b'if-range')
        self.asked.append(wanted)
        etag = b'"%d"' % self.version
        size = len(self.content)
        if not wanted or condition not in (None, etag):
            return response(200, self.content, b'etag: ' + etag, *self.fields)
        start, stop = re.fullmatch(rb'bytes=(\d+)-(\d*)', wanted).groups()
        start, stop = int(start), min(int(stop or size) + bool(stop), size)
        if start >= stop:
            return response(416, b'', b'content-range: bytes */%d' % size)
        return response(206, self.content[start:stop], b'etag: ' + etag, *self.fields,
                        b'content-range: bytes %d-%d/%d' % (start, stop - 1, size))

    async def __call__(self, peer):
        while True:
            answer = self.answer(await peer.read_head())
            limit = self.cuts.pop(0) if self.cuts else None
            if limit is not None:
                await peer.send(answer[:answer.index(b'\r\n\r\n') + 4 + limit])
                return
            await peer.send(answer)


async def in_parallel(origin, path, pauses=(0,) * 5, **options):
    options = {'parallel': 3, 'part_size': 100, 'fsync': False, **options}
    async with Server(origin) as server, pool() as request:
        return await download(request, server.url, path, pauses=pauses, jitter=0,
                              resource='test', **options)


@on_one_loop
async def test_the_memory_does_not_grow_with_the_length_that_a_server_claims(path):
    script = Script(rest(0, stop=1000, total=2 ** 30), response(404))
    tracemalloc.start()
    try:
        with pytest.raises(DownloadStatusError, match='404'):
            await in_parallel(script, path, parallel=2, part_size=1000)
        assert tracemalloc.get_traced_memory()[1] < 2 ** 22
    finally:
        tracemalloc.stop()


PIECES = [b'bytes=%d-%d' % (start, min(start + 99, 1023)) for start in range(0, 1024, 100)]


@on_loops
async def test_several_ranges_at_once(path):
    origin, progress = Origin(), []
    done = await in_parallel(origin, path, on_progress=lambda *told: progress.append(told))
    assert_whole(path)
    assert (done.size, done.resumed_from) == (1024, 0)
    assert sorted(origin.asked) == sorted([b'bytes=0-99', *PIECES[1:-1], b'bytes=1000-1023'])
    assert sorted(progress) == progress
    assert progress[-1] == (1024, 1024)


@on_loops
async def test_several_ranges_at_once_are_asked_for_again(path):
    origin = Origin(cuts=[50, 1, 0, None, 99])
    await in_parallel(origin, path)
    assert_whole(path)
    assert b'bytes=50-99' in origin.asked


@on_one_loop
async def test_several_ranges_at_once_go_on_later(path, part):
    with pytest.raises(DownloadError, match='the last attempts, 1, failed'):
        await in_parallel(Origin(cuts=[None] * 5 + [50]), path, pauses=())
    assert part.stat().st_size == 1024
    origin = Origin()
    done = await in_parallel(origin, path)
    assert 500 < done.resumed_from < 1000
    assert len(origin.asked) < 7
    assert_whole(path)
    # By one request, what is there from the first byte on is used.
    with pytest.raises(DownloadError):
        await in_parallel(Origin(cuts=[None] * 5 + [50]), path, pauses=())
    origin = Origin()
    done = await in_parallel(origin, path, parallel=1)
    assert origin.asked == [b'bytes=%d-' % done.resumed_from]
    assert_whole(path)
    # And the other way round.
    await begin(path, length=250, etag=b'"0"')
    origin = Origin()
    done = await in_parallel(origin, path)
    assert done.resumed_from == 250
    assert sorted(origin.asked)[0] == b'bytes=250-349'
    assert_whole(path)


@on_one_loop
async def test_a_first_piece_that_is_not_there_is_nothing_for_one_request(path):
    release = asyncio.Event()

    async def holding(peer):
        origin_answer = origin.answer(await peer.read_head())
        if origin.count == 1:
            await peer.send(origin_answer[:-1])
            await release.wait()
        else:
            await peer.send(origin_answer)
            release.set()

    origin = Origin()
    with pytest.raises(DownloadError):
        await in_parallel(holding, path, pauses=(), parallel=2)
    origin = Origin()
    done = await in_parallel(origin, path, parallel=1)
    assert origin.asked == [b'bytes=99-']
    assert done.resumed_from == 99
    assert_whole(path)


FALLBACKS = {
    'no ranges': ([whole()], [PIECES[0]]),
    'no ranges, cut off': ([cut(whole()), rest(100)], [PIECES[0], b'bytes=100-']),
    'no validator': ([rest(0, stop=100, etag=b''), whole(etag=b'')], [PIECES[0], None]),
    'a weak validator': ([rest(0, stop=100, etag=b'W/"1"'), whole(etag=b'')], [PIECES[0], None]),
    'another range': ([rest(0, stop=101), whole()], [PIECES[0], None]),
    'nothing of which there is a range':
        ([response(416, b'', b'content-range: bytes */0'), whole()], [PIECES[0], None]),
    'busy': ([response(503), whole()], [PIECES[0]] * 2),
}


@pytest.mark.parametrize('case', FALLBACKS)
@on_one_loop
async def test_one_request_where_several_can_not_be(case, path):
    responses, asked = FALLBACKS[case]
    _, was_asked = await downloaded(path, *responses, parallel=3, part_size=100)
    assert [wanted for wanted, _ in was_asked] == asked
    assert_whole(path)


@on_loops
async def test_another_digest_of_what_came_in_pieces_is_an_error_the_second_time(path, tmp_path):
    origin = Origin()
    with pytest.raises(DownloadDigestError, match='the digest of the caller is sha256 00'):
        await in_parallel(origin, path, digest=('sha256', bytes(32)))
    assert len(origin.asked) == 2 * len(PIECES)
    assert not [*tmp_path.iterdir()]


@on_loops
async def test_a_file_that_changes_while_several_ranges_come(path):
    for number in (2, 4, 11):
        origin = Origin(changes={number: OTHER})
        await in_parallel(origin, path)
        assert_whole(path, OTHER)


@on_loops
async def test_a_piece_with_another_digest_is_not_kept(path, part, monkeypatch):
    monkeypatch.setattr(lowhaio_download, 'SYNC_SIZE', 10)
    bad = rest(0, b'content-digest: sha-256=' + ZEROS)
    error, asked = await downloaded(
        path, bad, pauses=(), parallel=2, part_size=1024, fsync=True)
    assert (type(error), asked) == (DownloadDigestError, [(b'bytes=0-1023', None)])
    assert not [*path.parent.iterdir()]


@on_loops
async def test_what_ends_one_of_several_ends_all(path):
    class Full(Exception):
        pass

    def full(done, total):
        raise Full

    with pytest.raises(Full):
        await in_parallel(Origin(), path, on_progress=full)


@on_loops
async def test_the_others_do_not_have_to_come_to_their_end(path):
    class Full(Exception):
        pass

    async def script(peer):
        asked = await peer.read_head()
        await peer.send(origin.answer(asked)[:None if b'bytes=0-' in asked else -1])
        await peer.closed()

    def full(done, total):
        if done > 99:
            raise Full

    origin = Origin(content=CONTENT[:200])
    async with Server(script) as server, pool(socket_timeout=1000) as request:
        with pytest.raises(Full):
            await download(
                request, server.url, path, parallel=2, part_size=100, on_progress=full)


@on_loops
async def test_another_version_is_not_mixed_with_what_still_comes_of_the_first_one(path):
    """The rest of the first piece comes when another version has come as a whole."""
    async def script(peer):
        asked = await peer.read_head()
        if len(origin.asked) > 1:
            await peer.send(origin.answer(asked))
            return
        answer = origin.answer(asked)
        if b'bytes=0-' in asked:
            await peer.send(answer[:-100])
            await changed.wait()
            await turns(20)
            await peer.send(answer[-100:])
        else:
            await peer.send(answer)
            changed.set()

    changed, origin = asyncio.Event(), Origin(changes={2: OTHER})
    async with Server(script) as server, pool() as request:
        await download(request, server.url, path, parallel=2, part_size=512, pauses=(0,))
    assert_whole(path, OTHER)


@on_loops
async def test_what_cancels_one_of_several_ends_all(path):
    async def request(method, url, **kwargs):
        if origin.count > 3:
            raise asyncio.CancelledError
        return await inner(method, url, **kwargs)

    origin = Origin()
    async with Server(origin) as server, pool() as inner:
        with pytest.raises(asyncio.CancelledError):
            await download(request, server.url, path, parallel=2, part_size=100)
    assert not path.exists()
    assert asyncio.current_task().cancelling() == 0


@on_loops
async def test_a_cancellation_is_not_lost_to_a_failure_at_the_same_time(path):
    def full(done, total):
        task.cancel()
        raise OSError(errno.ENOSPC, 'full')

    task = asyncio.ensure_future(in_parallel(Origin(), path, on_progress=full))
    with pytest.raises(asyncio.CancelledError):
        await task


# --------------------------------------------------------------------- locks, ends and crashes

@on_loops
async def test_two_downloads_to_one_path(path, part):
    held = asyncio.Event()

    async def script(peer):
        await peer.read_head()
        begun.set()
        await held.wait()
        await peer.send(whole())

    begun = asyncio.Event()
    async with Server(script) as server, pool() as request:
        first = asyncio.ensure_future(download(request, server.url, path))
        await begun.wait()
        with pytest.raises(DownloadBusyError) as raised:
            await download(request, server.url, path)
        assert str(raised.value) == f'{part} is locked: another download writes to it'
        assert type(raised.value.__cause__) is BlockingIOError
        held.set()
        await first
    assert_whole(path)


@pytest.mark.parametrize('is_replaced', [True, False])
@on_one_loop
async def test_a_part_that_gets_its_name_while_another_one_takes_its_lock(
        is_replaced, path, part, monkeypatch):
    """The lock is then that of the whole file, to which nobody may write."""
    def flock(descriptor, operation):
        monkeypatch.setattr(fcntl, 'flock', original)
        if is_replaced:
            part.rename(path)
            part.write_bytes(b'another')
        else:
            part.unlink()
        original(descriptor, operation)

    original = fcntl.flock
    part.write_bytes(b'a whole one')
    monkeypatch.setattr(fcntl, 'flock', flock)
    error, _ = await downloaded(path, response(404))
    assert error.code == b'404'
    assert [each.read_bytes() for each in path.parent.iterdir()] == [b'a whole one'] * is_replaced


@pytest.mark.parametrize('parallel', [1, 2])
@on_loops
async def test_a_cancelled_download_goes_on_later(parallel, path, part):
    async def script(peer):
        answer = origin.answer(await peer.read_head())
        await peer.send(answer[:-10])
        if len(answer) > 10:
            await peer.closed()

    origin, seen = Origin(), []
    async with Server(script) as server, pool() as request:
        task = asyncio.ensure_future(download(
            request, server.url, path, parallel=parallel, part_size=512, resource='test',
            on_progress=lambda *told: seen.append(told)))
        await until(lambda: len(seen) == parallel)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(server.peers) == parallel
    origin = Origin()
    done = await in_parallel(origin, path, parallel=parallel)
    assert done.resumed_from == 1024 - 10 * parallel
    assert_whole(path)


@pytest.mark.parametrize('parallel', [1, 3])
@on_one_loop
async def test_a_download_is_cancelled_after_each_number_of_turns(parallel, path):
    """Nothing is left open, and the next call goes on."""
    async with pool() as request:
        for number in range(0, 1000, parallel):
            origin = Origin(cuts=[300, None, 300])
            async with Server(origin) as server:
                arguments = {'parallel': parallel, 'part_size': 400, 'pauses': (0,),
                             'resource': 'test', 'fsync': number % 10 == 0}
                task = asyncio.ensure_future(download(request, server.url, path, **arguments))
                await turns(number)
                is_whole = task.done()
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                assert not is_whole or path.exists()
                await download(request, server.url, path, **arguments)
            assert_whole(path)
            path.unlink()
            if is_whole:
                break
    assert number > 7


@on_loops
async def test_a_disk_that_is_full(path, part):
    """Linux ends what passes the limit with a signal, which Python ignores."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        error, _ = await downloaded(path, [whole()[:-600], whole()[-600:]])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.errno == errno.EFBIG
    assert part.read_bytes() == CONTENT[:500]
    done, asked = await downloaded(path, rest(500))
    assert asked == [ranged(500)]
    assert_whole(path)


@on_one_loop
async def test_a_state_that_can_not_be_written_closes_the_connections(path):
    """At once, and not when somebody drops the exception."""
    async def script(peer):
        answer = origin.answer(await peer.read_head())
        if peer.index:
            await until(lambda: seen)
            answer = answer[:-1]
        await peer.send(answer)
        ended.append(await peer.closed())

    def no_room(done, total):
        seen.append(done)
        if done > 400:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1, limits[1]))
            raise ValueError('no more')

    origin, seen, ended = Origin(), [], []
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with Server(script) as server, pool() as request:
        try:
            with pytest.raises(OSError, match='File too large') as got:
                await download(request, server.url, path, parallel=2, part_size=400, fsync=False,
                               on_progress=no_room)
            await until(lambda: len(ended) == len(server.peers))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert got.value.errno == errno.EFBIG
    assert str(got.value.__context__) == 'no more'


KILLED = '''
import asyncio, gc, itertools, os, pathlib, signal, sys
import lowhaio_download
from lowhaio import Pool

url, folder = sys.argv[1:]
path = pathlib.Path(folder, 'file')
left = None

def counted(function):
    def counting(*args):
        global left
        if left is not None:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return function(*args)
    return counting

for name in ('ftruncate', 'write', 'pwrite', 'replace', 'unlink'):
    setattr(os, name, counted(getattr(os, name)))
lowhaio_download.SYNC_SIZE = 500
gc.freeze()

async def main(parallel):
    request, close = Pool()
    await lowhaio_download.download(
        request, url, path, parallel=parallel, part_size=600, pauses=(0,) * 5, resource="test",
        fsync=left is not None)
    await close()

for number, parallel in itertools.product(range(1000), (1, 2)):
    if parallel == 2 and number % 3:
        continue
    if os.fork() == 0:
        left = number
        asyncio.run(main(parallel))
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.wait()[1])
    left = None
    asyncio.run(main((number + parallel) % 2 + 1))
    print(number, parallel, status, path.read_bytes().hex(), *os.listdir(folder), sep=',')
    path.unlink()
    if status == 0 and parallel == 2:
        break
'''


def test_a_process_that_is_killed_at_any_moment_leaves_what_the_next_one_can_use(tmp_path):
    """It is killed before each call that changes something on the disk, one after the other. The
    server has another version now and then, and cuts responses off."""
    origin = Origin(cuts=[400, 50, None] * 1000, changes={
        number: OTHER if number // 7 % 2 else CONTENT for number in range(7, 10 ** 4, 7)})

    def script(sock):
        while True:
            answer = origin.answer(receive_head(sock))
            limit = origin.cuts.pop(0)
            if limit is not None:
                sock.sendall(answer[:answer.index(b'\r\n\r\n') + 4 + limit])
                return
            sock.sendall(answer)

    def serve(sock):
        with contextlib.suppress(EOFError, ConnectionError):
            script(sock)

    folder = tmp_path / 'folder'
    folder.mkdir()
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(
        str(ROOT / each) for each in ('', 'layers/download', 'layers/retry'))}
    with ThreadServer(serve) as server:
        ended = subprocess.run(
            [sys.executable, '-c', KILLED, server.url, folder], text=True, env=environment,
            timeout=60, check=False, capture_output=True)
    # In debug mode, asyncio writes to the other stream what takes long.
    rows = [line.split(',') for line in ended.stdout.splitlines()]
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert {row[2] for row in rows} == {str(-signal.SIGKILL), '0'}
    assert len(rows) > 20
    for row in rows:
        assert bytes.fromhex(row[3]) in (CONTENT, OTHER), row[:3]
        assert row[4:] == ['file'], row[:3]


# --------------------------------------------------------------------------------- by chance

@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.none() | st.integers(0, 1100), max_size=12),
       changes=st.dictionaries(st.integers(1, 12), st.integers(1, 1100), max_size=4),
       parallel=st.integers(1, 3), part_size=st.integers(90, 1100), has_digest=st.booleans())
def test_the_result_is_one_version_and_whole_or_an_error(
        tmp_path_factory, cuts, changes, parallel, part_size, has_digest):
    versions = {number: random.Random(number).randbytes(size) for number, size in changes.items()}
    path = tmp_path_factory.mktemp('chance') / 'file'
    origin = Origin(cuts=cuts, changes=versions)

    async def main():
        for _ in range(20):
            try:
                await in_parallel(origin, path, pauses=(0,), parallel=parallel,
                                  part_size=part_size)
                return
            except DownloadError:
                assert not path.exists()
        raise AssertionError('it does not come to an end')

    asyncio.run(main())
    assert_whole(path, origin.content)


# ------------------------------------------------------------------------------ reprs, README

def test_a_repr_shows_the_state_and_no_secret(path):
    options = lowhaio_download.Options(None, (), 0, 0, 1, 1, True, print, print)
    with contextlib.closing(lowhaio_download.Part(path, 'test', True)) as part:
        job = lowhaio_download.Job(None, 'http://a:b@c/d?e', (), options, part)
        assert repr(job) == f'<Job http://c <Part {path} 0 bytes sparse=False> restarts=0>'
    assert repr(lowhaio_download.Attempts(job)) == '<Attempts count=0>'
    assert repr(lowhaio_download.Stretch(1, 2)) == '<Stretch 1 to 2 is_piece=False>'
    assert lowhaio_download.origin_of('a') == ''


@pytest.mark.parametrize('block', python_blocks(pathlib.Path(__file__).with_name('README.md')))
def test_a_block_of_the_readme_runs_as_it_stands(block, capsys, path, monkeypatch):
    monkeypatch.chdir(path.parent)
    with internet(Answering(whole())):
        run_block(block)
    assert capsys.readouterr().out == '1024 1024\n1024 0\n'
    assert_whole(path.with_name('archive.zip'))
