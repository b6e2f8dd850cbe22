"""Follows names whose addresses change while their nameserver is slow, lossy, dead or rotating.

    python fuzz/names.py
    python fuzz/names.py --minutes 60 --seed 1 rotating 'outages of 20 s'

Minutes of a virtual clock pass in seconds. A pool makes requests at random times to a service that
moves at random times. Each scenario tells how many requests, failures and connections there were,
how many queries the nameserver got in a second, how long the slowest request took, and how long
after a move requests still began that went to an old address: the median of all moves, and the
worst. These promises are kept:

- a move of a single address is followed within the TTL, and the time that the nameserver takes;
- a move of one of many addresses is followed within twice the TTL, or 60 s more than that;
- while no nameserver answers, the last addresses serve for 30 s after their TTL, no longer, and no
  request fails in that time;
- the queries are few, and so are the connections.
"""
import argparse
import asyncio
import dataclasses
import functools
import gc
import heapq
import itertools
import logging
import pathlib
import random
import statistics
import sys
import tempfile
import time

# For the harness of the tests, wherever lowhaio comes from.
sys.path.insert(1, str(pathlib.Path(__file__).parents[1]))

import lowhaio  # noqa: E402
from tests.harness import (  # noqa: E402
    CLOCKED,
    SERVFAIL,
    SILENCE,
    NameFiles,
    Reply,
    ScriptedNameserver,
    ServerAtEach,
    found,
    turns,
)

NAME = 'service.test'
FIRST_OUTAGE = 20  # seconds after the beginning
TEN, HUNDRED = ([f'127.0.1.{number}' for number in range(1, count + 1)] for count in (10, 100))


# ------------------------------------------------------------------------------------ scenarios

@dataclasses.dataclass
class Bounds:
    """What is promised. Seconds, but for `queries` of a second and `connections` of a minute."""

    follow: float
    slowest: float
    queries: float
    connections: float = 60
    # Requests may fail only if they begin so long after the nameserver has gone down, or later,
    # and until so long after it works again.
    fails_from: float = float('inf')
    fails_until: float = 0


@dataclasses.dataclass
class Scenario:
    """What the service and its nameserver do.

    `moves` are the seconds between two moves, at least and at most. `reply` makes a reply from
    the world and the query. There are `rate` requests in a second, or so many times `at_once`. In
    each `cycle` of seconds, the nameserver is down for some. It takes `longer` than other
    scenarios by that factor.
    """

    bounds: Bounds
    ttl: float
    moves: tuple[float, float]
    reply: object
    rate: float = 5
    at_once: int = 1
    nameservers: tuple[str, ...] = ('127.0.0.1',)
    first_nameserver: str = 'answers'
    cycle: float = 0
    down: float = 0
    longer: float = 1
    options: dict = dataclasses.field(default_factory=dict)

    def is_large(self):
        """The service has fifty addresses."""
        return self.reply in (some, next_ones)


def one(world, query):
    """The only address of the service."""
    return found(world.current[0], ttl=world.scenario.ttl)


def late(world, query):
    return found(world.current[0], ttl=world.scenario.ttl, late=0.6)


def every_other(failure, world, query):
    """Each lookup has to ask twice."""
    return failure if next(world.numbers) % 2 == 0 else one(world, query)


def some(world, query):
    """Eight of fifty addresses, by chance."""
    return found(*world.random.sample(world.current, 8), ttl=world.scenario.ttl)


def next_ones(world, query):
    """The next eight of fifty addresses."""
    first = 8 * next(world.numbers)
    return found(*(world.current[(first + index) % 50] for index in range(8)),
                 ttl=world.scenario.ttl)


SCENARIOS = {
    'all is well': Scenario(Bounds(30, 0, 0.1), 30, (40, 80), one),
    'TTL 0': Scenario(Bounds(1, 0, 1.01), 0, (5, 15), one),
    'every other reply is lost': Scenario(
        Bounds(1.5, 0.5, 3), 1, (4, 12), functools.partial(every_other, SILENCE)),
    'every other reply is SERVFAIL': Scenario(
        Bounds(1, 0, 2.1), 1, (4, 12), functools.partial(every_other, SERVFAIL)),
    'every reply takes 0.6 s': Scenario(Bounds(6.1, 1.1, 1), 5, (20, 40), late),
    'the first nameserver is silent': Scenario(
        Bounds(1.5, 0.5, 1.2), 1, (5, 15), one, nameservers=('127.0.0.1', '127.0.0.2'),
        first_nameserver='silent'),
    'the first nameserver refuses': Scenario(
        Bounds(1, 0, 1.1), 1, (5, 15), one, nameservers=('127.0.0.1', '127.0.0.2'),
        first_nameserver='refuses'),
    'outages of 20 s': Scenario(
        Bounds(5 + 20 + 9, 1.1, 0.6), 5, (20, 40), one, cycle=60, down=20),
    'outages of 90 s': Scenario(
        Bounds(5 + 30, 7.75, 2, fails_from=30, fails_until=4), 5, (20, 40), one, cycle=180,
        down=90),
    'rotating': Scenario(Bounds(20, 0, 0.11, 5), 10, (45, 90), some),
    'rotating in turn': Scenario(Bounds(20, 0, 0.11, 5), 10, (45, 90), next_ones),
    'rotating, 8 requests at once': Scenario(
        Bounds(20, 0, 0.11, 60), 10, (45, 90), some, at_once=8),
    'rotating, no grace': Scenario(
        Bounds(10, 0, 0.11, 7), 10, (45, 90), some, options={'max_grace': 0}),
    'rotating, TTL 300': Scenario(
        Bounds(360, 0, 0.02, 2), 300, (400, 800), some, rate=0.5, longer=10),
}


# ---------------------------------------------------------------------------------- simulation

class World:
    """A scenario while its clock goes."""

    def __init__(self, scenario, seed, web, nameserver):
        self.scenario = scenario
        self.random = random.Random(seed)
        self.web = web
        self.nameserver = nameserver
        self.numbers = itertools.count()
        self.loop = asyncio.get_running_loop()
        self.current = []
        self.left_at = {}  # when each of the other addresses has left the service
        self.moves = []
        self.outages = []
        self.requests = []  # when each began, and the addresses that had left by then
        self.left_at_end = {}  # by the number of a request, the addresses that had left
        self.running = set()
        self.slowest = 0.0
        self.failures = []  # when each of the requests began that failed, and why

    # What happens

    def move(self):
        """To another address, or half of fifty to others."""
        now = self.loop.time()
        addresses, count, change = (HUNDRED, 50, 25) if self.scenario.is_large() else (TEN, 1, 1)
        stay, leave = self.current[change:], self.current[:change]
        if leave:
            self.moves.append(now)
        others = [address for address in addresses if address not in self.current]
        self.current = stay + self.random.sample(others, count - len(stay))
        self.left_at = {address: when for address, when in self.left_at.items()
                        if address not in self.current} | dict.fromkeys(leave, now)
        self.loop.call_later(self.random.uniform(*self.scenario.moves), self.move)

    def go_down(self):
        now = self.loop.time()
        self.outages.append((now, now + self.scenario.down))
        self.nameserver.answers_at['127.0.0.1'] = SILENCE
        self.loop.call_later(self.scenario.down, self.go_up)

    def go_up(self):
        del self.nameserver.answers_at['127.0.0.1']
        self.loop.call_later(self.scenario.cycle - self.scenario.down, self.go_down)

    def start_requests(self, request):
        for _ in range(self.scenario.at_once):
            number = len(self.requests)
            self.requests.append((self.loop.time(), self.left_at))
            task = asyncio.ensure_future(self.make_request(request, number))
            self.running.add(task)
            task.add_done_callback(self.running.discard)
        self.loop.call_later(self.random.expovariate(self.scenario.rate),
                             self.start_requests, request)

    async def make_request(self, request, number):
        began = self.loop.time()
        try:
            _, _, body = await request(b'GET', f'http://{NAME}:{self.web.port}/{number}')
            await lowhaio.buffered(body)
        except lowhaio.HttpError as error:
            self.failures.append((began, error))
        self.left_at_end[number] = self.left_at
        self.slowest = max(self.slowest, self.loop.time() - began)

    async def pass_time(self, seconds):
        timers = self.loop.timers
        end = self.loop.time() + seconds
        while timers[0][0] < end:
            if timers[0][2].cancelled():
                heapq.heappop(timers)
            else:
                self.loop.set_time(max(self.loop.time(), timers[0][0]))
                await self.settle()

    async def settle(self):
        """Let happen what needs no time."""
        for pause in (0, 0.0002, 0.0005):
            time.sleep(pause)
            for _ in range(4):
                await turns(5)
                if not self.running:
                    return

    # What is measured

    def follow_times(self):
        """For each move, how long after it the last request began that went to an old address."""
        times = dict.fromkeys(self.moves, 0.0)
        for head, address in zip(self.web.heads, self.web.used, strict=True):
            number = int(head.split()[1][1:])
            began, left_at = self.requests[number]
            # While a request waits for the nameserver, the service may move there again.
            if address in left_at and address in self.left_at_end.get(number, ()):
                moved_at = left_at[address]
                times[moved_at] = max(times[moved_at], began - moved_at)
        return list(times.values())

    def broken(self, minutes):
        """Each promise that was not kept."""
        bounds = self.scenario.bounds
        follow = max(self.follow_times(), default=0)
        for what, value, bound in (
                ('a move was followed after %.3f s', follow, bounds.follow),
                ('a request took %.3f s', self.slowest, bounds.slowest),
                ('there were %.3f queries in a second',
                 len(self.nameserver.queries) / minutes / 60, bounds.queries),
                ('there were %.1f connections in a minute',
                 len(self.web.connections) / minutes, bounds.connections)):
            if value > bound + 1e-6:
                yield f'{what % value}, not {bound:g} at most'
        for began, error in self.failures:
            if not any(down + bounds.fails_from <= began <= up + bounds.fails_until
                       for down, up in self.outages):
                yield f'a request failed: {error}'
                break


async def simulate(scenario, minutes, seed, directory):
    """Run a scenario, and return what was measured."""
    addresses = HUNDRED if scenario.is_large() else TEN
    async with (ScriptedNameserver(*scenario.nameservers) as nameserver,
                ServerAtEach(*addresses) as web):
        world = World(scenario, seed, web, nameserver)
        nameserver.answers[NAME, 'A'] = functools.partial(scenario.reply, world)
        nameserver.answers[NAME, 'AAAA'] = Reply()
        if scenario.first_nameserver == 'silent':
            nameserver.answers_at['127.0.0.1'] = SILENCE
        elif scenario.first_nameserver == 'refuses':
            nameserver.refuse('127.0.0.1')
        if scenario.down:
            world.loop.call_later(FIRST_OUTAGE, world.go_down)
        request, close = lowhaio.Pool(
            get_dns_resolver=NameFiles(directory, nameserver).get_dns_resolver,
            keep_alive_timeout=600, **scenario.options)
        try:
            world.move()
            world.start_requests(request)
            await world.pass_time(minutes * 60)
        finally:
            for task in world.running:
                task.cancel()
            await asyncio.gather(*world.running, return_exceptions=True)
            await close()
        return world


def run(name, loop_name, minutes, seed):
    """Run a scenario, print what was measured, and return which promises were not kept."""
    scenario = SCENARIOS[name]
    minutes *= scenario.longer
    # Where a pool begins is its only own chance.
    lowhaio.random_turn = functools.partial(random.Random(seed).randrange, 100)
    # The collector would end what must end without it.
    gc.collect()
    gc.disable()
    try:
        with (tempfile.TemporaryDirectory() as directory,
              asyncio.Runner(loop_factory=CLOCKED[loop_name]) as runner):
            world = runner.run(simulate(scenario, minutes, seed, pathlib.Path(directory)))
    finally:
        gc.enable()
    follow = world.follow_times()
    print(f'{name:31} {loop_name:7} {minutes:7g} {len(world.requests):8} '
          f'{len(world.failures):6} {len(world.web.connections):11} '
          f'{len(world.nameserver.queries) / minutes / 60:9.3f} {world.slowest:7.2f} '
          f'{len(follow):5} {statistics.median(follow or [0]):6.2f} {max(follow, default=0):6.2f} '
          f'{scenario.bounds.follow:8.2f}', flush=True)
    return list(world.broken(minutes)), len(world.requests)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('scenarios', nargs='*', metavar='SCENARIO', help='all, unless given')
    parser.add_argument('--minutes', type=float, default=5, help='of the virtual clock')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--loop', choices=('asyncio', 'uvloop'), default='asyncio')
    parser.add_argument('--list', action='store_true', help='the scenarios')
    options = parser.parse_args()
    if options.list:
        print(*SCENARIOS, sep='\n')
        return
    unknown = set(options.scenarios).difference(SCENARIOS)
    if unknown:
        parser.error(f'there is no scenario called {", ".join(sorted(unknown))}')
    logging.disable()
    print('                                loop    minutes requests failed connections queries/s '
          'slowest moves followed: median, worst, promised')
    names = options.scenarios or list(SCENARIOS)
    total = 0
    for name in names:
        broken, requests = run(name, options.loop, options.minutes, options.seed)
        total += requests
        if broken:
            sys.exit('\n'.join((
                f'BROKEN: {"; ".join(broken)}',
                f'repeat it: python fuzz/names.py --minutes {options.minutes:g} '
                f'--seed {options.seed} --loop {options.loop} {name!r}')))
    print(f'{len(names)} scenarios, {total} requests')


if __name__ == '__main__':
    main()
