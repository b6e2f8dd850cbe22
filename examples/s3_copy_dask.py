"""Copies a folder to S3, from S3, or within S3, with the processes of a Dask cluster.

    python examples/s3_copy_dask.py s3://bucket/photos s3://other-bucket/photos
    python examples/s3_copy_dask.py --workers 8 s3://bucket/photos photos
    python examples/s3_copy_dask.py --scheduler tcp://10.0.0.1:8786 s3://bucket/a s3://bucket/b

What is copied, and what is skipped, is as in s3_copy.py, which has to be beside this file. Both
places are listed here, and batches of files are sent to the workers. Each of them has a pool of
its own, on its own event loop, and finds credentials where it runs. If one dies, others copy what
it has not.

Without --scheduler, workers are started on this machine, and ended. With it, they need lowhaio and
the layers, and a folder has to be one that all of them see.
"""
import asyncio
import contextlib
import os
import secrets
import signal
import sys
from collections import deque
from itertools import count

import cloudpickle
import s3_copy
from distributed import Client, LocalCluster, WorkerPlugin, get_worker
from s3_copy import COPIES, FAILURES, File, Folder, Summary, open_places, told, wanted

# The workers do not have that file, so what is used of it is sent to them with the plugin. Dask's
# `upload_file` would load it again in workers that have it, below the feet of other copies.
cloudpickle.register_pickle_by_value(s3_copy)

# A batch has at most so many files, and bytes unless it is a single file. It is a 200th of what
# has been listed, within these limits. So there are hundreds of tasks, whatever is copied.
SHARE = 200
FILES = 32, 1000
BYTES = 2 ** 26, 2 ** 30
# How many batches the cluster has been given, and how many of those it has done it still knows.
# The first keeps the listing out of memory, and the second is what the dashboard shows.
AHEAD = KEPT = 500
# For a batch that fails as a whole. The layer has made single requests again long before.
RETRIES = 2
# How many pages of a listing tell what of a batch is there already: its files, and some others.
PAGES = 2


class Copying(WorkerPlugin):
    """What a worker has while the copy lasts. Only the arguments are sent to it."""

    def __init__(self, args):
        self.args = args
        # Several copies can use one cluster.
        self.name = f's3_copy-{secrets.token_hex(8)}'

    def setup(self, worker):
        if not self.args.scheduler:
            # A terminal sends it to all processes, but the one that started them ends them.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.source, self.target, self.close = open_places(self.args)
        # Of all batches that the worker has at once: one for each of its threads.
        self.turns = asyncio.Semaphore(self.args.concurrency)
        self.running = set()

    async def teardown(self, worker):
        """The worker ends, or the program has ended. Uploads in parts are aborted."""
        for task in self.running:
            task.cancel()
        await asyncio.gather(*self.running, return_exceptions=True)
        await self.close()

    async def run(self, after, files):
        """Copy a batch in a task of our own, because those of Dask are not to be cancelled."""
        task = asyncio.create_task(self.copy(after, [File(*file) for file in files]))
        self.running.add(task)
        task.add_done_callback(self.running.discard)
        await asyncio.wait([task])
        return None if task.cancelled() else task.result()

    async def copy(self, after, files):
        """How many files are there now, their bytes, and the names and errors of the others."""
        missing, failed = await self.missing(after, files), {}
        async with asyncio.TaskGroup() as group:
            # Turns go to those who have waited longest. So one batch is done before the next,
            # which goes on while the worker is given another one.
            for file in missing:
                group.create_task(self.copy_file(file, failed))
        size = sum(file.size for file in files if file.name not in failed)
        return len(files) - len(failed), size, list(failed.items())

    async def copy_file(self, file, failed):
        async with self.turns:
            try:
                await COPIES[type(self.source), type(self.target)](
                    self.source, self.target, file, lambda size: None)
            except FAILURES as error:
                failed[file.name] = told(error)

    async def missing(self, after, files):
        """The files that no other worker has copied before it died, or nearly so.

        `after` is the name of the last file before them. A few files that are there may be
        missed. They are copied again, which does no harm.
        """
        there = {}
        if isinstance(self.target, Folder):
            for file in files:
                with contextlib.suppress(OSError, ValueError):
                    there[file.name] = self.target.file(file.name)
        else:
            pages = self.target.bucket.list(
                self.target.prefix, start_after=self.target.prefix + after)
            for _ in range(PAGES):
                async for page in pages:
                    there |= {file.name: file for file in self.target.files_of(page)}
                    break
        return [file for file in files
                if not ((copy := there.get(file.name)) and file.is_same(copy))]


async def copy_batch(name, after, files):
    """The task. It is a coroutine function, so Dask runs it on the event loop of the worker."""
    copying = get_worker().plugins.get(name)
    # It is gone if the program has ended. Then nobody looks at the result.
    return await copying.run(after, files) if copying else None


async def batches(files):
    """Pairs: the name of the last file before a batch, and its files."""
    def share(total, limits):
        return min(max(total // SHARE, limits[0]), limits[1])

    after, batch, size, all_files, all_bytes = '', [], 0, 0, 0
    async for file in files:
        if batch and (len(batch) >= share(all_files, FILES)
                      or size + file.size > share(all_bytes, BYTES)):
            yield after, batch
            after, batch, size = batch[-1].name, [], 0
        batch.append(file)
        size += file.size
        all_files += 1
        all_bytes += file.size
    if batch:
        yield after, batch


@contextlib.asynccontextmanager
async def cluster_with(plugin, args):
    """A client of the cluster. What has been started here is ended at the end."""
    async with contextlib.AsyncExitStack() as stack:
        cluster = args.scheduler or await stack.enter_async_context(LocalCluster(
            n_workers=args.workers or os.cpu_count(), threads_per_worker=2,
            dashboard_address='127.0.0.1:0', asynchronous=True))
        client = await stack.enter_async_context(Client(cluster, asynchronous=True))
        print(f'Dashboard: {client.dashboard_link}', file=sys.stderr)
        await client.register_plugin(plugin)
        try:
            yield client
        finally:
            await client.unregister_worker_plugin(plugin.name)


async def copy_batches(client, name, batches, summary):
    """Let the workers copy all batches."""
    async def follow(number, after, files):
        future = client.submit(
            copy_batch, name, after, [tuple(file) for file in files],
            key=(name, number), pure=False, retries=RETRIES)
        try:
            copied, size, failed = await future
        except (Exception, asyncio.CancelledError) as error:
            if future.status == 'pending':
                future.release()
                raise  # it is this program that is ended
            summary.on_failed(f'{files[0].name} to {files[-1].name}', told(error), len(files))
        else:
            summary.on_copied(copied, size)
            summary.bar.update(size)
            for failure in failed:
                summary.on_failed(*failure)
        done.append(future)
        ahead.release()

    ahead, done, numbers = asyncio.Semaphore(AHEAD), deque(maxlen=KEPT), count()
    async with asyncio.TaskGroup() as group:
        async for after, files in batches:
            summary.bar.total += sum(file.size for file in files)
            await ahead.acquire()
            group.create_task(follow(next(numbers), after, files))


async def copy_all(args):
    """Copy all files, and return whether all went well."""
    copying = Copying(args)
    source, target, close = open_places(args)
    try:
        async with cluster_with(copying, args) as client:
            with Summary() as summary:
                await copy_batches(client, copying.name, batches(
                    wanted(source, target, summary.on_error, summary.on_skipped)), summary)
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    finally:
        await close()
    return summary.finish()


if __name__ == '__main__':
    s3_copy.main(
        copy_all, __doc__,
        ('--scheduler', {'metavar': 'ADDRESS', 'help': 'of a cluster that runs'}),
        ('--workers', {'type': int, 'metavar': 'N', 'help': 'processes (default: one a core)'}))
