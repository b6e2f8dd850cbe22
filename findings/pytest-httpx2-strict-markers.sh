#!/usr/bin/env bash
# The marker of pytest-httpx2 is unknown to pytest.
#
# Packages: pytest-httpx2 1.0.0, pytest 9.2.0.
# Guess: the marker `httpx2`, by which its README configures the fixture `httpx2_mock`, is registered, as the code
#   of the plugin does it: `--strict-markers` knows it.
# What happens: the hook that registers it is in a module which pytest does not take for the plugin. The fixture
#   works. The marker is a PytestUnknownMarkWarning, and an error with `--strict-markers`.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    pytest-httpx2==1.0.0 pytest==9.2.0 httpx2==2.16.2 2>/dev/null
cd "$work"
cat > test_marker.py <<'PYTHON'
import httpx2
import pytest


@pytest.mark.httpx2(base_url='https://www.example.com')
def test_marker(httpx2_mock):
    httpx2_mock.get('/').respond(text='hello')
    assert httpx2.get('https://www.example.com/').text == 'hello'
PYTHON
"$work/venv/bin/python" -m pytest -q test_marker.py | tee loose.txt
grep -q 'PytestUnknownMarkWarning: Unknown pytest.mark.httpx2' loose.txt
grep -q '^1 passed, 1 warning' loose.txt
"$work/venv/bin/python" -m pytest -q --strict-markers test_marker.py | tee strict.txt && exit 1
grep -q "'httpx2' not found in \`markers\` configuration option" strict.txt
# Seen, of the first run and of the second one:
#   test_marker.py:5: PytestUnknownMarkWarning: Unknown pytest.mark.httpx2 - is this a typo? …
#   1 passed, 1 warning in 0.35s
#   'httpx2' not found in `markers` configuration option
#   1 error in 0.36s
