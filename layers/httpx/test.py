"""Tests of how lowhaio_httpx is made. What it does is tried in layers/httpx2/test.py."""

import pathlib
import shutil
import subprocess
import sys

import lowhaio_httpx
import lowhaio_httpx2

ROOT = pathlib.Path(__file__).parent.parent.parent


def run(directory, *arguments):
    return subprocess.run(
        [sys.executable, directory / '.ci' / 'transports.py', *arguments], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)


def test_it_is_what_the_script_makes_of_the_other(tmp_path):
    """Their public names are the same."""
    assert run(ROOT, '--check').returncode == 0
    assert lowhaio_httpx.__all__ == lowhaio_httpx2.__all__
    for path in '.ci/transports.py', 'layers/httpx/lowhaio_httpx.py', \
            'layers/httpx2/lowhaio_httpx2.py':
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    made = tmp_path / 'layers' / 'httpx' / 'lowhaio_httpx.py'
    text = made.read_text()
    assert text.startswith('# Made of layers/httpx2/lowhaio_httpx2.py by .ci/transports.py.\n')
    made.write_text(text + 'changed')
    told = run(tmp_path, '--check')
    assert told.returncode == 1
    assert told.stdout == (
        'Not what python .ci/transports.py writes: layers/httpx/lowhaio_httpx.py\n')
    assert run(tmp_path).returncode == 0
    assert made.read_text() == text
