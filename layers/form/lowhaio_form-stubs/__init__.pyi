# Made of lowhaio_form.py by .ci/stubs.py.

import os
from collections.abc import Iterable, Mapping
from typing import Any, IO
from lowhaio import Body, Fields

__all__ = ['form', 'multipart', 'sized']
File = bytes | bytearray | memoryview | IO[bytes] | os.PathLike[str]
Files = Mapping[str, Any] | Iterable[tuple[str | bytes, Any]]
Data = Mapping[str, Any] | Iterable[tuple[str | bytes, Any]]

def form(data: Data) -> tuple[Body, Fields]: ...

def multipart(data: Data = (), files: Files = ()) -> tuple[Body, Fields]: ...

def sized(content: File) -> tuple[Body, Fields]: ...
