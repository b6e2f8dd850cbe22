"""Writes the transport for httpx: it is that for httpx2, with the names of httpx.

    python .ci/transports.py            writes it
    python .ci/transports.py --check    exits with 1 if it is not what it would write

httpx2 went on from httpx, and all that the transport uses of the two has the same names. What does
differ between them is told in the source, and asked for when it runs.
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).parent.parent
SOURCE = ROOT / 'layers/httpx2/lowhaio_httpx2.py'
MADE = ROOT / 'layers/httpx/lowhaio_httpx.py'
HEAD = '# Made of layers/httpx2/lowhaio_httpx2.py by .ci/transports.py.\n'
NAMES = {'httpx2': 'httpx', 'httpcore2': 'httpcore'}


def main():
    text = SOURCE.read_text(encoding='utf-8')
    for name, made in NAMES.items():
        text = text.replace(name, made)
    text = HEAD + text
    if not MADE.exists() or MADE.read_text(encoding='utf-8') != text:
        if sys.argv[1:] == ['--check']:
            sys.exit(f'Not what python .ci/transports.py writes: {MADE.relative_to(ROOT)}')
        MADE.write_text(text, encoding='utf-8')


if __name__ == '__main__':
    main()
