"""Request bodies of forms and files, and the fields that describe them, for lowhaio.

::

    request, close = Pool()
    body, headers = multipart({'title': 'Report'}, {'file': Path('report.pdf')})
    code, headers, body = await request(
        b'POST', 'https://example.com/', headers=headers, body=body)

Each function returns a `body`, whose length is known before it is sent, and the headers that a
request has to have with it. Files are streamed. `Pieces` is such a body, and the rest makes the
pieces of it.
"""

from __future__ import annotations

import mimetypes
import os
import secrets
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import IO, Any
from urllib.parse import urlencode

from lowhaio import Body, Fields, streamed

__all__ = ['form', 'multipart', 'sized']

# Bytes of a file that are read at once.
MAX_CHUNK = 64 * 1024

File = bytes | bytearray | memoryview | IO[bytes] | os.PathLike[str]
# Each is a `File`, or a tuple of a file name, a `File` and perhaps a content type, or a list of
# these. Type checkers make `object` of a dict of several of these, so they have to take anything.
Files = Mapping[str, Any] | Iterable[tuple[str | bytes, Any]]
Data = Mapping[str, Any] | Iterable[tuple[str | bytes, Any]]


# ----------------------------------------------------------------------------------- bodies

def form(data: Data) -> tuple[Body, Fields]:
    """The body and the headers of a form without files, as `application/x-www-form-urlencoded`.

    - `data`: a mapping or pairs of names and values, which are sent in UTF-8. A list is one field
      for each of its items, and what is neither str nor bytes is sent as `str(value)`.

    The headers are `content-type` and `content-length`. What is no mapping and no pairs raises
    TypeError.
    """
    content = urlencode(pairs_of('data', data), doseq=True).encode()
    return streamed(content), ((b'content-type', b'application/x-www-form-urlencoded'),
                               (b'content-length', b'%d' % len(content)))


def multipart(data: Data = (), files: Files = ()) -> tuple[Body, Fields]:
    """The body and the headers of a form with files, as browsers send it (RFC 7578).

    - `data`: a mapping or pairs of names and values, as for `form`.
    - `files`: a mapping or pairs of names and files. A file is bytes, a `Path`, a binary file that
      is open and seekable, or `(file name, file)`, or `(file name, file, content type)`. A list is
      several files. Without a file name it is that of the file, or `blob`.

    The headers are `content-type` and `content-length`. Files are read while they are sent, in
    chunks of 64 KiB, and each time from where they were when this was called. They have to stay
    open and unchanged until then. What is no file raises TypeError or ValueError at once.
    """
    boundary = secrets.token_hex(16).encode()
    pieces: list[Any] = []
    for name, value in fields_of(data):
        pieces += [part_head(boundary, name), as_bytes(value), b'\r\n']
    for name, file in pairs_of('files', files):
        for each in file if isinstance(file, list) else (file,):
            file_name, content, kind = described(each)
            pieces += [part_head(boundary, name, file_name, kind), content, b'\r\n']
    body = Pieces([*pieces, b'--%b--\r\n' % boundary])
    return body, ((b'content-type', b'multipart/form-data; boundary=' + boundary),
                  (b'content-length', b'%d' % body.length))


def sized(content: File) -> tuple[Body, Fields]:
    """The body and the headers of a file, or of bytes, that is the whole content of a request.

    - `content`: bytes, a `Path`, or a binary file that is open and seekable. It is read as
      `multipart` does.

    The headers are `content-length` alone. What is no file raises TypeError or ValueError at once.
    """
    if isinstance(content, (bytes, bytearray, memoryview)):
        data = bytes(content)
        return streamed(data), ((b'content-length', b'%d' % len(data)),)
    body = Pieces([content])
    return body, ((b'content-length', b'%d' % body.length),)


# ------------------------------------------------------------------- what pieces are made of

def pairs_of(name: str, given: Any) -> tuple[tuple[Any, Any], ...]:
    """A mapping or pairs, as pairs."""
    if isinstance(given, (str, bytes)):
        raise TypeError(f'{name} must be a mapping or pairs, got {type(given).__name__}: what is '
                        'encoded already needs no form')
    try:
        return tuple((key, value) for key, value in (
            given.items() if isinstance(given, Mapping) else given))
    except (TypeError, ValueError) as cause:
        raise TypeError(
            f'{name} must be a mapping or pairs, got {type(given).__name__}') from cause


def fields_of(data: Any) -> Iterator[tuple[Any, Any]]:
    """The fields of a form, one for each item of a list."""
    for name, value in pairs_of('data', data):
        for each in value if isinstance(value, (list, tuple)) else (value,):
            yield name, each


def described(file: Any) -> tuple[str, Any, str]:
    """The name, the content and the type of a file."""
    if isinstance(file, tuple):
        if len(file) not in (2, 3):
            raise ValueError('a tuple in files must be (file name, file, content type), without '
                             f'the last or with it, got {len(file)} items')
        file_name, content, *kinds = file
    else:
        path = os.fspath(file) if isinstance(file, os.PathLike) else getattr(file, 'name', None)
        # Browsers call content without a name so. Without one it would be a field, and no file.
        file_name = os.path.basename(path) if isinstance(path, str) else 'blob'
        content, kinds = file, []
    guessed = mimetypes.guess_type(file_name)[0] or 'application/octet-stream'
    return file_name, content, kinds[0] if kinds else guessed


def part_head(boundary: bytes, name: str | bytes, file_name: str | None = None, kind: str = '',
              ) -> bytes:
    head = b'--%b\r\ncontent-disposition: form-data; name="%b"' % (boundary, quoted(name))
    if file_name is not None:
        if not (kind.isascii() and kind.isprintable()):
            raise ValueError(f'the content type of a file must be printable ASCII, got {kind!r}')
        head += b'; filename="%b"\r\ncontent-type: %b' % (quoted(file_name), kind.encode())
    return head + b'\r\n\r\n'


def quoted(name: str | bytes) -> bytes:
    """A name as the HTML standard has it, whatever it holds."""
    return as_bytes(name).replace(b'\r', b'%0D').replace(b'\n', b'%0A').replace(b'"', b'%22')


def as_bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


# ----------------------------------------------------------------------------------- pieces

class Pieces:
    """A body of bytes and files, one after the other, whose length is known beforehand.

    It can be sent again: each time, a file is read from where it was in the beginning.
    """

    __slots__ = ('pieces', 'length', '__weakref__')

    def __init__(self, pieces: Iterable[Any]) -> None:
        # Bytes, or a file or its path, each with its start and its length.
        self.pieces = [(piece, *extent(piece)) for piece in joined(pieces)]
        self.length = sum(length for _, _, length in self.pieces)

    def __repr__(self) -> str:
        return f'<Pieces {self.length} bytes>'

    async def __call__(self) -> AsyncIterator[bytes]:
        for piece, start, length in self.pieces:
            if isinstance(piece, bytes):
                yield piece
            elif isinstance(piece, os.PathLike):
                with open(piece, 'rb') as file:
                    for chunk in read(file, start, length):
                        yield chunk
            else:
                for chunk in read(piece, start, length):
                    yield chunk


def joined(pieces: Iterable[Any]) -> list[Any]:
    """The pieces, with small ones that follow each other made one: each piece is a chunk."""
    found: list[Any] = [b'']
    for piece in pieces:
        if isinstance(piece, (bytearray, memoryview)):
            piece = bytes(piece)
        last = found[-1]
        if type(piece) is type(last) is bytes and len(piece) + len(last) < MAX_CHUNK:
            found[-1] = last + piece
        else:
            found.append(piece)
    return found if found[0] else found[1:]


def extent(piece: Any) -> tuple[int, int]:
    """Where a piece starts, and its length."""
    if isinstance(piece, bytes):
        return 0, len(piece)
    if isinstance(piece, os.PathLike):
        return 0, os.stat(piece).st_size
    if not hasattr(piece, 'read'):
        raise TypeError(
            f'a file must be bytes, a binary file or a Path, got {type(piece).__name__}')
    if not piece.seekable() or isinstance(piece.read(0), str):
        raise ValueError('a file must be seekable, and opened for reading bytes')
    start = piece.tell()
    end = piece.seek(0, os.SEEK_END)
    piece.seek(start)
    return start, end - start


def read(file: Any, start: int, length: int) -> Iterator[bytes]:
    """At most so many bytes of a file. If it has fewer, the request fails for its length.

    Between two chunks, another request may read the same file.
    """
    stop = start + length
    while file.seek(start) < stop and (chunk := file.read(min(stop - start, MAX_CHUNK))):
        start += len(chunk)
        yield chunk
