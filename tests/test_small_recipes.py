"""The recipes of docs/ that are short keep their word, too, when something goes wrong."""

import asyncio
import contextlib

import pytest

from lowhaio import HttpConnectionError, HttpDataError, buffered
from tests.harness import (
    OK,
    PATIENCE,
    ROOT,
    UNFINISHED,
    Answering,
    Server,
    failure,
    get,
    head,
    holding,
    on_loops,
    on_loops_at_once,
    pool,
    python_blocks,
    recipe,
    until,
    yielding,
)


@contextlib.asynccontextmanager
async def answered(*responses, **options):
    """A `request`, the server, and the script that answers it."""
    script = Answering(*responses)
    async with Server(script) as server, pool(**options) as request:
        yield request, server, script


def response(code, content=b'', *lines):
    start = b'HTTP/1.1 %d OK' % code
    return head(b'content-length: %d' % len(content), *lines, start=start) + content


# ---------------------------------------------------------------------------------------- requests


@on_loops
async def test_a_base_url_takes_paths_only():
    with_base = functions_of('def with_base(request, base_url, defaults=()):')['with_base']
    async with answered(OK) as (request, server, script):
        request = with_base(request, f'{server.origin}/v1', ((b'x', b'y'),))
        await get(request, '/users', headers=[(b'accept', b'b')])
        for path in ('users', 'http://other.test/', '', '.other.test/'):
            with pytest.raises(ValueError, match='a path begins with /'):
                await request(b'GET', path)
        await get(request, '//other.test/')
    assert script.heads[0].endswith(b'\r\naccept: b\r\nx: y\r\n\r\n')
    assert [one.split()[1] for one in script.heads] == [b'/v1/users', b'/v1//other.test/']


LINKS = {
    'one': ([b'<?page=2>; rel="next"'], '?page=2'),
    'without quotes': ([b'</b>; rel=next'], '/b'),
    'capitals and spaces': ([b'</b> ; Rel = "NEXT"'], '/b'),
    'several words': ([b'</b>; rel="last next"'], '/b'),
    'several in a field': ([b'</a>; rel=prev, </b>; rel=next; title="a, b"'], '/b'),
    'a quoted comma before': ([b'</a>; title="a, </x>; rel=next", </b>; rel="next"'], '/b'),
    'several fields': ([b'</a>; rel=prev', b'</b>; rel=next'], '/b'),
    'another parameter first': ([b'</b>; type="text/html"; rel=next'], '/b'),
    'another origin': ([b'<https://b.test/c>; rel=next'], 'https://b.test/c'),
    'none': ([], None),
    'another word': ([b'</b>; rel=nextly'], None),
    'an empty one': ([b'</b>; rel=""'], None),
    'no rel': ([b'</b>; title=next'], None),
    'no brackets': ([b'/b; rel=next'], None),
}


@pytest.mark.parametrize('case', LINKS)
def test_the_link_to_the_next_page(case):
    values, expected = LINKS[case]
    headers = [(b'x', b'y'), *((b'link', value) for value in values)]
    url = recipe('pagination').next_url('https://a.test/', headers)
    if expected is not None and not expected.startswith('https'):
        expected = f'https://a.test/{expected.removeprefix("/")}'
    assert url == expected


@on_loops
async def test_a_list_that_does_not_end_is_an_error():
    items = recipe('pagination').items
    page = response(200, b'[1]', b'link: </>; rel=next')
    async with answered(page, page, page) as (request, server, script):
        taken = []
        with pytest.raises(RuntimeError, match='there are more than 3 pages'):
            async for item in items(request, server.url, most_pages=3):
                taken.append(item)
        assert taken == [1, 1, 1]
    async with answered(response(500, b'sorry')) as (request, server, script):
        with pytest.raises(RuntimeError, match=r"the server answered 500: b'sorry'"):
            await anext(items(request, server.url))


@on_loops
async def test_what_has_not_changed_is_kept_for_as_long_as_it_has_an_etag():
    first = response(200, b'first', b'etag: "1"')
    not_modified = b'HTTP/1.1 304 Not Modified\r\n\r\n'
    second = response(200, b'second', b'etag: "2"')
    missing = response(404, b'gone')
    async with answered(first, not_modified, second, missing, OK) as (request, server, script):
        ask = recipe('conditional-requests').remembering(request)
        answers = [await ask(server.url) for _ in range(5)]
    assert answers == [(b'200', b'first'), (b'200', b'first'), (b'200', b'second'),
                       (b'404', b'gone'), (b'200', b'ok')]
    assert [b'if-none-match: ' in one for one in script.heads] == [False, True, True, True, False]


@on_loops_at_once
async def test_progress_is_told_of_what_was_sent(tmp_path):
    path = tmp_path / type(asyncio.get_running_loop()).__name__
    path.write_bytes(bytes(70_000))
    sent = []
    upload = recipe('upload').upload
    refused = response(413, b'', b'connection: close')
    async with answered(OK, refused) as (request, server, script):
        for code in (b'200', b'413'):
            answer, _, body = await upload(request, server.url, path, sent.append)
            assert answer == code
            await buffered(body)
        # With nothing to send, nothing is expected of the server.
        path.write_bytes(b'')
        await buffered((await upload(request, server.url, path, sent.append))[2])
    assert [b'\r\nexpect: ' in one for one in script.heads] == [True, True, False]
    assert sent[:2] == [65536, 70_000]


# --------------------------------------------------------------------------------------- responses


@on_loops
async def test_a_response_of_limited_length():
    module = recipe('limited-response')
    async with answered(OK, OK, UNFINISHED) as (request, server, script):
        for limit, expected in ((3, b'ok'), (2, b'ok')):
            _, _, body = await request(b'GET', server.url)
            assert await module.read_at_most(body, limit) == expected
        _, _, body = await request(b'GET', server.url)
        with pytest.raises(module.TooLong, match='longer than 1 bytes'):
            await module.read_at_most(body, 1)
        with pytest.raises(HttpDataError):
            await anext(body)


def functions_of(line, end='asyncio.run(main())\n'):
    """Those of the recipe that has the line."""
    [block] = [block for page in ROOT.glob('docs/recipes/*.md') for block in python_blocks(page)
               if line in block]
    names = {}
    exec(compile(block.partition(f'\n{end}')[0], line, 'exec'), names)
    return names


# --------------------------------------------------------------------------------------- streaming


@pytest.mark.parametrize('chunks, expected', [
    ([b'a\nb\n'], [b'a', b'b']),
    ([b'a', b'b', b'\nc'], [b'ab', b'c']),
    ([b'a\n', b'\n', b'b'], [b'a', b'', b'b']),
    ([b'{"a": "\xc3', b'\xbc"}\n'], ['{"a": "ü"}'.encode()]),
    ([], [])])
def test_lines_may_be_cut_anywhere(chunks, expected):
    async def main():
        return [line async for line in recipe('json-lines').lines(yielding(*chunks))]

    assert asyncio.run(main()) == expected


def test_a_line_that_does_not_end_is_an_error():
    async def main():
        lines = recipe('json-lines').lines(yielding(b'a\n', *[b'b' * 10] * 10), longest=50)
        assert await anext(lines) == b'a'
        with pytest.raises(ValueError, match='a line is longer than 50 bytes'):
            await anext(lines)

    asyncio.run(main())


@on_loops
async def test_a_copy_whose_source_is_cut_off_is_not_whole():
    copy = recipe('copy').copy
    received = []

    async def source(peer):
        await peer.read_head()
        await peer.send(UNFINISHED)

    async def target(peer):
        received.append(await peer.closed())

    async with Server(source) as one, Server(target) as other, pool() as request:
        assert isinstance(await failure(copy(request, one.url, other.url)), HttpDataError)
        await until(lambda: received)
    assert b'content-length: 100' in received[0]
    assert received[0].endswith(b'\r\n\r\nok')
    for bad in (response(404), head(b'transfer-encoding: chunked') + b'0\r\n\r\n'):
        async with answered(bad) as (request, server, _):
            with pytest.raises(RuntimeError, match='no content of known length'):
                await copy(request, server.url, server.url)


# -------------------------------------------------------------------------------------- operations


@on_loops
async def test_requests_that_begin_one_after_the_other():
    async def request(method, url):
        begun.append((url, loop.time()))

    loop = asyncio.get_running_loop()
    start = loop.time()
    begun = []
    paced = recipe('rate-limit').paced(request, per_second=50)
    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(paced(b'GET', str(number)))
    assert [url for url, _ in begun] == ['0', '1', '2', '3']
    # uvloop's clock has milliseconds.
    assert all(time - start >= number * 0.02 - 0.002 for number, (_, time) in enumerate(begun))


@on_loops
async def test_what_is_measured_however_it_ends():
    reports = []
    measured = recipe('measuring').measured

    def report(method, host, outcome, seconds):
        assert 0 <= seconds < PATIENCE
        reports.append((method, host, outcome))

    async with answered(response(404)) as (request, server, _):
        await get(measured(request, report), server.url)
    async with pool() as request:
        await failure(measured(request, report)(b'GET', 'ftp://name.test/'))
    async def script(peer):
        await peer.read_head()
        asked.set()
        await peer.closed()

    asked = asyncio.Event()
    async with Server(script) as server, pool() as request:
        task = asyncio.create_task(measured(request, report)(b'GET', server.url))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert reports == [('GET', '127.0.0.1', '404'), ('GET', 'name.test', 'refused'),
                       ('GET', '127.0.0.1', 'cancelled')]


@on_loops
async def test_waiting_until_a_server_is_up():
    wait_until_up = recipe('waiting-until-up').wait_until_up

    async def refused(*_):
        raise ConnectionRefusedError

    async with answered(response(503), response(404)) as (request, server, script):
        assert await wait_until_up(request, server.url, pause=0) == b'404'
        assert len(script.heads) == 2
    async with pool(get_connection=refused) as request:
        with pytest.raises(TimeoutError, match='is not up after 0.05 seconds') as caught:
            await wait_until_up(request, 'http://name.test/', seconds=0.05, pause=0.01)
        assert isinstance(caught.value.__cause__, HttpConnectionError)
        with pytest.raises(HttpConnectionError, match='url must have the scheme'):
            await wait_until_up(request, 'ftp://name.test/')


@on_loops
async def test_the_pool_of_an_application_is_closed_with_it():
    lifespan = recipe('web-application').lifespan
    async with Server(Answering(OK)) as server:
        with pytest.raises(ZeroDivisionError):
            async with lifespan(app=None) as state:
                request = state['lowhaio_request']
                assert (await get(request, server.url))[2] == b'ok'
                raise ZeroDivisionError
        assert 'the pool is closed' in str(await failure(request(b'GET', server.url)))


def test_a_client_for_code_that_is_not_asynchronous():
    """Many threads share its connections, and its limit of time counts."""
    kind = functions_of('class Client:', 'client = Client()')['Client']

    async def main():
        async with Server(Answering(OK)) as server, Server(holding()) as silent:
            client = kind(max_connections=2)
            try:
                answers = await asyncio.gather(*(
                    asyncio.to_thread(client.fetch, b'GET', server.url) for _ in range(8)))
                assert {(code, content) for code, _, content in answers} == {(b'200', b'ok')}
                with pytest.raises(TimeoutError):
                    await asyncio.to_thread(client.fetch, b'GET', silent.url, seconds=0.05)
            finally:
                await asyncio.to_thread(client.close)

    asyncio.run(main())
