"""What a host name costs, beside an address, in µs of the CPU of this process.

    python benchmarks/names.py

A request over a connection that is kept goes to the same server by its address, by a name that a
nameserver knows, and by one that the hosts file knows. They take turns, and the ratio to the
address is of the same round. Then names are looked up that were not asked for before: by the
resolver that a pool has, and by one of aiodnsresolver's alone.
"""
import argparse
import asyncio
import contextlib
import functools
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import aiodnsresolver

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from lowhaio import HttpConnectionError, Pool, buffered, get_dns_resolver_default  # noqa: E402


@contextlib.contextmanager
def running_server():
    with subprocess.Popen([sys.executable, HERE / 'server.py'], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as process:
        found = json.loads(process.stdout.readline())
        yield int(found['events'].rpartition(':')[2]), tuple(found['nameserver'])
        process.stdin.close()


async def cost_of_requests(request, url, number):
    start = time.process_time()
    for _ in range(number):
        _, _, body = await request(b'GET', url)
        await buffered(body)
    return (time.process_time() - start) / number * 1e6


async def cost_of_lookups(request, number, round_number):
    start = time.process_time()
    for index in range(number):
        with contextlib.suppress(HttpConnectionError):
            await request(b'GET', f'http://{index}.{round_number}.example.com/')
    return (time.process_time() - start) / number * 1e6


def shown(costs, base):
    for name, figures in costs.items():
        ratio = statistics.median(
            figure / other for figure, other in zip(figures, costs[base], strict=True))
        yield f'    {name:36}{statistics.median(figures):8.1f}{ratio:8.3f}'


def no_socket(family):
    raise OSError('a lookup is all that is measured')


async def measure(port, nameserver, root, rounds, requests):
    (root / 'hosts').write_text('127.0.0.1 hosts.example.com\n')
    (root / 'resolv.conf').write_text('nameserver 127.0.0.1\n')
    local = functools.partial(
        get_dns_resolver_default, hosts=str(root / 'hosts'),
        resolv_conf=str(root / 'resolv.conf'), port=nameserver[1])

    async def get_nameservers(*_):
        yield 1, nameserver

    alone = functools.partial(aiodnsresolver.Resolver, get_nameservers=get_nameservers)

    request, close = Pool(get_dns_resolver=local)
    urls = {'address': f'http://127.0.0.1:{port}/status',
            'name of a nameserver': f'http://name.example.com:{port}/status',
            'name of the hosts file': f'http://hosts.example.com:{port}/status'}
    costs = {name: [] for name in urls}
    for url in urls.values():
        await cost_of_requests(request, url, 500)
    for _ in range(rounds):
        for name, url in urls.items():
            costs[name].append(await cost_of_requests(request, url, requests))
    print('A request over a connection that is kept, and its ratio to the address')
    print(*shown(costs, 'address'), sep='\n')
    await close()

    resolvers = {'aiodnsresolver alone': alone, 'the resolver of a pool': local}
    costs = {name: [] for name in resolvers}
    for round_number in range(rounds):
        for name, get_dns_resolver in resolvers.items():
            request, close = Pool(get_dns_resolver=get_dns_resolver, get_sock=no_socket)
            costs[name].append(await cost_of_lookups(request, requests // 4, round_number))
            await close()
    print('A lookup of A and AAAA, with the request that fails after it')
    print(*shown(costs, 'aiodnsresolver alone'), sep='\n')


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--requests', type=int, default=1000)
    args = parser.parse_args()
    with running_server() as (port, nameserver), tempfile.TemporaryDirectory() as root:
        asyncio.run(measure(port, nameserver, pathlib.Path(root), args.rounds, args.requests))


if __name__ == '__main__':
    main()
