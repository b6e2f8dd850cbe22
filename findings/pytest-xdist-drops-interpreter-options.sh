#!/usr/bin/env bash
# With pytest-xdist, `python -X dev -b -m pytest -n 1` runs no test in development mode.
#
# Packages: pytest-xdist 3.8.0, execnet 2.1.2, pytest 8.4.2.
# Guess: the processes that run the tests have the options of the interpreter that pytest was started with,
#   as those of multiprocessing have. A CI that calls `python -X dev -m pytest` goes on to do what it says
#   when -n is added.
# What happens: the executable is started without any option. A test sees the flags of an interpreter
#   without options, all tests pass, and nothing tells of it: what development mode would have found is not
#   looked for any more. PYTHONDEVMODE=1 in the environment does arrive.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    pytest==8.4.2 pytest-xdist==3.8.0 execnet==2.1.2 2>/dev/null
cat > "$work/test_flags.py" <<'PYTHON'
import sys


def test_flags():
    with open('seen', 'w') as file:
        print(sys.flags.dev_mode, sys.flags.bytes_warning, file=file)
PYTHON
cd "$work"
seen() {
    "$@" -q -p no:cacheprovider > output
    cat seen
}
alone=$(seen venv/bin/python -X dev -b -m pytest)
distributed=$(seen venv/bin/python -X dev -b -m pytest -n 1)
by_environment=$(PYTHONDEVMODE=1 seen venv/bin/python -m pytest -n 1)
echo "development mode and -b, without -n: $alone"
echo "with -n 1: $distributed"
echo "with -n 1 and PYTHONDEVMODE=1: $by_environment"
[ "$alone" = 'True 1' ]
[ "$distributed" = 'False 0' ]
[ "$by_environment" = 'True 0' ]
# Seen:
#   development mode and -b, without -n: True 1
#   with -n 1: False 0
#   with -n 1 and PYTHONDEVMODE=1: True 0
