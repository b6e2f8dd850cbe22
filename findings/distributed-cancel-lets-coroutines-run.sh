#!/usr/bin/env bash
# A coroutine that runs on a Dask worker is not cancelled by the cancellation of its future.
#
# Package: distributed 2026.8.0 (on dask 2026.8.0).
# Guess: a thread can not be cancelled, so a function that runs goes on after `Future.cancel()`. A coroutine
#   function runs on the event loop of the worker, where a task can be cancelled. So it gets a
#   CancelledError at its next `await`, closes what it has open, and ends.
# What happens: it runs to its end, however long that takes, and its place on the worker stays taken. The
#   future says `cancelled` at once. So does a client that is closed: what it had started goes on.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    distributed==2026.8.0 dask==2026.8.0 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import asyncio

from distributed import Client, get_worker


async def run_on():
    worker = get_worker()
    worker.said.append('started')
    try:
        await worker.may_end.wait()
        worker.said.append('ended as if nothing had happened')
    except asyncio.CancelledError:
        worker.said.append('cancelled')
        raise


async def until(is_so):
    while not is_so():
        await asyncio.sleep(0.01)


async def main():
    async with Client(n_workers=1, threads_per_worker=1, processes=False, asynchronous=True,
                      dashboard_address='127.0.0.1:0') as client:
        worker = client.cluster.workers[0]
        worker.said, worker.may_end = [], asyncio.Event()
        future = client.submit(run_on)
        await until(lambda: worker.said)
        await future.cancel()
        await until(lambda: worker.state.tasks and all(
            task.state == 'cancelled' for task in worker.state.tasks.values()))
        print(f'the future is {future.status}; the worker says that its task is cancelled, too')
        await asyncio.sleep(1)  # more than enough for a cancellation to arrive
        worker.may_end.set()
        await until(lambda: len(worker.said) == 2)
        print(f'the coroutine: {worker.said}')
        assert future.status == 'cancelled'
        assert worker.said == ['started', 'ended as if nothing had happened']


asyncio.run(asyncio.wait_for(main(), 60))
PYTHON
