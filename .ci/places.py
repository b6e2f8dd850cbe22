"""Keeps the line numbers of CONTRIBUTING.md, "Where things are".

    python .ci/places.py            writes them
    python .ci/places.py --check    exits with 1, and says which, if one is wrong

A row of the table names a file with a line, and then code that stands in that line alone.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parent.parent
PAGE = ROOT / 'CONTRIBUTING.md'
ROW = re.compile(r'`([\w./]+):(\d+)` \| `([^`]+)` \|')


def corrected(row):
    name, _, code = row.groups()
    lines = (ROOT / name).read_text().splitlines()
    numbers = [number for number, line in enumerate(lines, 1) if code in line]
    if len(numbers) != 1:
        sys.exit(f'{name} must have one line with {code!r}, and has {len(numbers)}')
    return f'`{name}:{numbers[0]}` | `{code}` |'


def main():
    before = PAGE.read_text()
    after = ROW.sub(corrected, before)
    if sys.argv[1:] == ['--check']:
        if after != before:
            sys.exit('CONTRIBUTING.md has other lines than it should: python .ci/places.py')
    else:
        PAGE.write_text(after)


if __name__ == '__main__':
    main()
