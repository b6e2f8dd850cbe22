"""Tests of lowhaio_form: what servers receive, and what werkzeug reads of it."""

import io
import pathlib

import pytest
from werkzeug.formparser import parse_form_data

from lowhaio import HttpConnectionError, HttpDataError, Phase, streamed
from lowhaio_form import form, multipart, sized
from lowhaio_redirect import redirectable
from lowhaio_retry import retry
from tests.harness import (
    OK,
    Answering,
    Server,
    failure,
    internet,
    on_loops,
    on_one_loop,
    pool,
    python_blocks,
    response,
    run_block,
    value,
    values_of,
)

README = pathlib.Path(__file__).with_name('README.md')


async def received(made, *responses, layer=lambda request: request):
    """Heads and bodies of a PUT with this body and these headers, as the server has them."""
    body, headers = made
    script = Answering(*responses or (OK,))
    async with Server(script) as server, pool() as request:
        code, _, _ = await layer(request)(b'PUT', server.url, headers=headers, body=body)
    assert code == b'200'
    for head, content in zip(script.heads, script.bodies, strict=True):
        assert values_of(head, b'content-length') == [b'%d' % len(content)]
        assert values_of(head, b'transfer-encoding') == []
    return script.heads, script.bodies


@pytest.mark.parametrize('data, expected', [
    ({'name': 'Zoë & Co', 'tag': ['a', 'b']}, b'name=Zo%C3%AB+%26+Co&tag=a&tag=b'),
    ([('a', 1), ('a', None), (b'b', b'\xff')], b'a=1&a=None&b=%FF'),
    (iter([('a', ())]), b''), ({}, b'')])
@on_one_loop
async def test_a_form(data, expected):
    [head], bodies = await received(form(data))
    assert bodies == [expected]
    assert value(head, b'content-type') == b'application/x-www-form-urlencoded'


@pytest.mark.parametrize('content', [b'ab', bytearray(b'ab'), memoryview(b'ab')])
@on_one_loop
async def test_bytes_have_a_length_and_can_be_seen_by_layers(content):
    body, headers = sized(content)
    assert isinstance(body, streamed)
    assert body.data == b'ab'
    assert (await received((body, headers)))[1] == [b'ab']
    assert headers == ((b'content-length', b'2'),)


@on_loops
async def test_a_file_is_sent_from_where_it_is_and_again_after_a_failure(tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(b'x' * 100_000)
    with open(path, 'rb') as file:
        file.seek(10)
        _, bodies = await received(
            sized(file), None, response(307, b'', b'location: /there'), OK,
            layer=lambda request: redirectable(retry(request)))
        assert not file.closed
    assert bodies == [b'x' * 99_990] * 3
    _, bodies = await received(sized(path))
    assert bodies == [b'x' * 100_000]
    assert repr(sized(path)[0]) == '<Pieces 100000 bytes>'


@on_one_loop
async def test_of_a_file_that_has_become_longer_the_beginning_is_sent(tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(b'x' * 10)
    made = sized(path)
    path.write_bytes(b'x' * 20)
    assert (await received(made))[1] == [b'x' * 10]


@on_one_loop
async def test_a_file_that_has_become_shorter_or_is_away_is_an_error(tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(b'x' * 10)
    made = sized(path)
    path.write_bytes(b'x')
    error = await failure(received(made))
    assert isinstance(error, HttpDataError)
    assert error.phase == Phase.BODY
    path.unlink()
    error = await failure(received(made))
    assert isinstance(error, HttpConnectionError)
    assert type(error.__cause__) is FileNotFoundError
    with pytest.raises(FileNotFoundError):
        sized(path)


def parsed(sent, content):
    """Fields and files, as werkzeug reads them."""
    _, form, files = parse_form_data({
        'REQUEST_METHOD': 'POST', 'wsgi.input': io.BytesIO(content),
        'CONTENT_TYPE': value(sent, b'content-type').decode(),
        'CONTENT_LENGTH': value(sent, b'content-length').decode()})
    found = []
    for name, file in files.items(multi=True):
        found.append((name, file.filename, file.content_type, file.read()))
        file.close()
    return list(form.items(multi=True)), found


@on_loops
async def test_a_form_with_files(tmp_path):
    path = tmp_path / 'Zoë "1".txt'
    path.write_bytes(b'of a path')
    with open(path, 'rb') as file:
        [head], [content] = await received(multipart(
            {'title': 'Zoë', 'tag': ['a', 2], 'raw': b'\x00'},
            [('a', path), ('b', file), ('c', b'of bytes'), ('d\r\n', ('n.png', b'image')),
             ('e', ('n', io.BytesIO(b'of memory'), 'a/b')), (b'f', [b'1', bytearray(b'2')])]))
    assert b'name="d%0D%0A"; filename="n.png"' in content
    assert 'name="a"; filename="Zoë %221%22.txt"'.encode() in content
    assert parsed(head, content) == (
        [('title', 'Zoë'), ('tag', 'a'), ('tag', '2'), ('raw', '\x00')],
        [('a', 'Zoë "1".txt', 'text/plain', b'of a path'),
         ('b', 'Zoë "1".txt', 'text/plain', b'of a path'),
         ('c', 'blob', 'application/octet-stream', b'of bytes'),
         ('d%0D%0A', 'n.png', 'image/png', b'image'),
         ('e', 'n', 'a/b', b'of memory'),
         ('f', 'blob', 'application/octet-stream', b'1'),
         ('f', 'blob', 'application/octet-stream', b'2')])


@on_loops
async def test_the_bytes_of_a_form_with_files(tmp_path):
    large, empty = tmp_path / 'large.bin', tmp_path / 'a"b\r\n\\\xe9'
    large.write_bytes(bytes(range(256)) * 2000)
    empty.touch()
    [head], [content] = await received(multipart(
        {'a"\r\nb': 'c\r\n--d', 'e': b'\0\xff'}, {'f': large, 'g': empty}))
    boundary = value(head, b'content-type').removeprefix(b'multipart/form-data; boundary=')
    begin = b'--' + boundary + b'\r\ncontent-disposition: form-data; name='
    of_unknown_kind = b'content-type: application/octet-stream\r\n\r\n'
    assert content == (
        begin + b'"a%22%0D%0Ab"\r\n\r\nc\r\n--d\r\n'
        + begin + b'"e"\r\n\r\n\0\xff\r\n'
        + begin + b'"f"; filename="large.bin"\r\n' + of_unknown_kind + large.read_bytes()
        + b'\r\n'
        + begin + b'"g"; filename="a%22b%0D%0A\\\xc3\xa9"\r\n' + of_unknown_kind + b'\r\n'
        + b'--' + boundary + b'--\r\n')


@on_one_loop
async def test_large_pieces_are_not_copied_and_small_ones_are_joined():
    large = bytes(1_000_000)
    body, _ = multipart({'b': 'c'}, {'a': large})
    chunks = [chunk async for chunk in body()]
    assert chunks[1] is large
    assert len(chunks) == 3
    body, _ = sized(io.BytesIO(large))
    assert {len(chunk) async for chunk in body()} == {64 * 1024, 1_000_000 % (64 * 1024)}


@on_one_loop
async def test_a_form_with_files_only_or_without_any_is_sent_again():
    heads, bodies = await received(
        multipart(files={'a': io.BytesIO(b'content')}), None, OK, layer=retry)
    assert len(heads) == 2
    for head, content in zip(heads, bodies, strict=True):
        assert parsed(head, content) == (
            [], [('a', 'blob', 'application/octet-stream', b'content')])
    [head], [content] = await received(multipart([('a', 'b')]))
    assert parsed(head, content) == ([('a', 'b')], [])
    [first, second] = [dict(multipart()[1])[b'content-type'] for _ in range(2)]
    assert first != second


class Pipe(io.BytesIO):
    def seekable(self):
        return False


NO_PAIRS = 'must be a mapping or pairs, got'


@pytest.mark.parametrize('make, kind, message', [
    (lambda: form(b'a=b'), TypeError, f'data {NO_PAIRS} bytes: what is encoded already needs no '
                                      'form'),
    (lambda: multipart('a=b'), TypeError, f'data {NO_PAIRS} str: what is encoded already'),
    (lambda: form(1), TypeError, f'data {NO_PAIRS} int$'),
    (lambda: form(['abc']), TypeError, f'data {NO_PAIRS} list$'),
    (lambda: multipart(files=[b'abc']), TypeError, f'files {NO_PAIRS} list$'),
    (lambda: multipart(files=b'abc'), TypeError, f'files {NO_PAIRS} bytes: what is'),
    (lambda: sized(1), TypeError, 'a file must be bytes, a binary file or a Path, got int$'),
    (lambda: multipart(files={'a': 'path'}), TypeError, 'a file must be bytes, .* got str$'),
    (lambda: sized(io.StringIO()), ValueError,
     'a file must be seekable, and opened for reading bytes$'),
    (lambda: multipart(files={'a': Pipe()}), ValueError, 'a file must be seekable'),
    (lambda: multipart(files={'a': ('n',)}), ValueError,
     r'a tuple in files must be \(file name, file, content type\), without the last or with it, '
     'got 1 items'),
    (lambda: multipart(files={'a': ('n', b'', 'a/b\r\nc: d')}), ValueError,
     r"the content type of a file must be printable ASCII, got 'a/b\\r\\nc: d'")])
def test_bad_arguments(make, kind, message):
    with pytest.raises(kind, match=f'^{message}'):
        make()


@pytest.mark.parametrize('block', python_blocks(README))
def test_readme(block, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path('report.pdf').write_bytes(b'%PDF')
    script = Answering(response(200, b'Hello'))
    with internet(script):
        run_block(block)
    assert set(capsys.readouterr().out.splitlines()) == {"b'200' b'Hello'"}
    assert b'%PDF' in script.bodies[-1]
