"""Requests on a schedule, and how long each took from when it was due. A part of measure.py.

A program that makes its next request when the last one has been answered makes fewer while it is
slow, so it hardly sees that it is. Here a request starts when it is due, however many still wait,
and its time runs from when it was due, not from when it started.

What starts them is a timer of the kernel, a file descriptor that the loop reads like a socket. A
timer of the loop would not do: epoll waits for whole milliseconds, so each start would be late by
up to one, which is several times what a request takes. The clients are measured in the process
that makes the requests, as they are used. The floor shows what all of that takes by itself.
"""
import asyncio
import ctypes
import os
import time

INTERVAL = 0.001  # seconds between two requests
# Between two looks of another task at the clock. They drift through all phases of the requests,
# and are few, as each costs the loop a turn.
LOOK_INTERVAL = 0.00537
TFD_TIMER_ABSTIME = 1


class Timer:
    """Calls a function with each time that is due, in seconds of the monotonic clock."""

    def __init__(self, loop, start, interval, call):
        self.loop, self.interval, self.call = loop, interval, call
        self.due = start
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self.libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK)
        times = (ctypes.c_long * 4)(*divided(interval), *divided(start))
        if self.fd < 0 or self.libc.timerfd_settime(self.fd, TFD_TIMER_ABSTIME, times, None):
            raise OSError(ctypes.get_errno(), 'no timer of the kernel')
        loop.add_reader(self.fd, self.read)

    def read(self):
        try:
            passed = int.from_bytes(os.read(self.fd, 8), 'little')
        except BlockingIOError:
            return
        for _ in range(passed):
            self.call(self.due)
            self.due += self.interval

    def close(self):
        self.loop.remove_reader(self.fd)
        os.close(self.fd)


def divided(seconds):
    nanoseconds = round(seconds * 1e9)
    return nanoseconds // 10 ** 9, nanoseconds % 10 ** 9


class Looks:
    """How late another task of the same loop runs, each time that it is due."""

    def __init__(self, loop, start):
        self.lags = []
        self.loop = loop
        self.waiter = loop.create_future()
        self.timer = Timer(loop, start, LOOK_INTERVAL, self.wake)
        self.task = loop.create_task(self.look())

    def wake(self, due):
        if not self.waiter.done():
            self.waiter.set_result(due)

    async def look(self):
        while True:
            due = await self.waiter
            self.lags.append(time.monotonic() - due)
            self.waiter = self.loop.create_future()

    def close(self):
        self.timer.close()
        self.task.cancel()


async def on_schedule(make, number):
    """Make so many requests. Returns their times and those of another task, in seconds, and the
    CPU of all of it."""
    loop = asyncio.get_running_loop()
    times, tasks = [], set()
    is_over = loop.create_future()

    async def request(due):
        await make()
        times.append(time.monotonic() - due)

    def start(due):
        nonlocal missing
        if missing:
            missing -= 1
            task = loop.create_task(request(due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        elif not is_over.done():
            is_over.set_result(None)

    missing = number
    cpu = time.process_time()
    at = time.monotonic() + 0.01
    looks, timer = Looks(loop, at), Timer(loop, at, INTERVAL, start)
    try:
        await is_over
    finally:
        timer.close()
        looks.close()
    await asyncio.gather(*tasks)
    return times, looks.lags, time.process_time() - cpu


def percentile(values, share):
    """The least value that so many have at most."""
    values = sorted(values)
    return values[max(0, -int(-share * len(values) // 1) - 1)]
