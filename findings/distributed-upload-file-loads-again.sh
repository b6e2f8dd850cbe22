#!/usr/bin/env bash
# Dask's upload_file loads a module again where it is there already: objects are of no class any more.
#
# Package: distributed 2026.8.0 (on dask 2026.8.0).
# Guess: `Client.upload_file('shapes.py')` sees to it that the workers have the module. A program calls it
#   when it starts. The second time nothing changes, because the workers have the very same file.
# What happens: each call reloads the module in each worker. What has been made before, by a task, a
#   plugin or another client of the same cluster, is of a class that the module does not have any more:
#   `isinstance` is false, a dictionary whose keys are classes has no such key, and an `except` with the
#   module's exception does not catch the one that is raised.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    distributed==2026.8.0 dask==2026.8.0 2>/dev/null
mkdir "$work/program"
cat > "$work/program/shapes.py" <<'PYTHON'
class Point:
    pass


AREAS = {Point: 0}
PYTHON
cat > "$work/program/main.py" <<'PYTHON'
from pathlib import Path

from distributed import Client

SHAPES = str(Path(__file__).with_name('shapes.py'))


def make(dask_worker):
    import shapes
    dask_worker.point = shapes.Point()


def look(dask_worker):
    import shapes
    point = dask_worker.point
    return isinstance(point, shapes.Point), type(point) in shapes.AREAS


if __name__ == '__main__':
    with Client(n_workers=1, threads_per_worker=1, dashboard_address='127.0.0.1:0') as client:
        client.upload_file(SHAPES)
        client.run(make)
        (before,) = client.run(look).values()
        client.upload_file(SHAPES)
        (after,) = client.run(look).values()
    print(f'is a Point, and found in a dictionary: {before}; after the same file came again: {after}')
    assert before == (True, True)
    assert after == (False, False)
PYTHON
"$work/venv/bin/python" "$work/program/main.py"
