#!/usr/bin/env bash
# streaming-form-data loses a small file if an empty line follows the form, unless it comes byte by byte.
#
# Package: streaming-form-data 2.1.0.
# Guess: what follows the last delimiter is to be ignored (RFC 2046 5.1.1, "epilogue"), and how the content
#   was divided on its way makes no difference. Two files of one name are two files (RFC 7578 4.3).
# What happens: with anything behind the last CR LF, even one empty line, the target is empty and there is
#   no error, when the form comes in one piece. Byte by byte, the file is there. Two files become one,
#   `onetwo`.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check streaming-form-data==2.1.0 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
from streaming_form_data import StreamingFormDataParser
from streaming_form_data.targets import ValueTarget


def part(content):
    return (b'--limit\r\nContent-Disposition: form-data; name="a"; filename="f"\r\n'
            b'Content-Type: application/octet-stream\r\n\r\n' + content + b'\r\n')


def parse(form, size):
    parser = StreamingFormDataParser({'Content-Type': 'multipart/form-data; boundary=limit'})
    target = ValueTarget()
    parser.register('a', target)
    for start in range(0, len(form), size):
        parser.data_received(form[start:start + size])
    return target.value


for name, form, size, expected in (
    ('plain, in one piece', part(b'hello') + b'--limit--\r\n', 1000, b'hello'),
    ('an empty line behind it, in one piece', part(b'hello') + b'--limit--\r\n\r\n', 1000, b''),
    ('an empty line behind it, byte by byte', part(b'hello') + b'--limit--\r\n\r\n', 1, b'hello'),
    ('an epilogue, in one piece', part(b'hello') + b'--limit--\r\nthe end', 1000, b''),
    ('two files', part(b'one') + part(b'two') + b'--limit--\r\n', 1000, b'onetwo'),
):
    value = parse(form, size)
    print(f'{name}: {value!r}')
    assert value == expected
PYTHON
# Seen:
#   plain, in one piece: b'hello'
#   an empty line behind it, in one piece: b''
#   an empty line behind it, byte by byte: b'hello'
#   an epilogue, in one piece: b''
#   two files: b'onetwo'
