"""Searches for a request that is sent as something else than what the caller gave.

    python fuzz/outgoing.py --seed 1
    python fuzz/outgoing.py --minutes 60

Methods, URLs, params, headers and bodies are random or almost right, and these promises are kept:

- what is accepted is exactly one request to h11 as a server, with exactly these fields, in their
  order and case, including duplicates, and this body. Its bytes are those that the caller gave;
- what is refused is refused with HttpConnectionError, and not one byte is sent;
- the host is the same for the lookup, the connection, the `host` field, TLS and the key of the
  pool, and it is the one that `urllib.parse` finds in the URL;
- a URL four times as long takes at most eight times the CPU.
"""
import argparse
import collections
import sys
import time

from hypothesis import HealthCheck, Phase, given, seed, settings

from strategies import (
    GROWING_URLS,
    REQUESTS,
    URLS,
    Origins,
    Server,
    check_linear,
    check_origin,
    check_sent,
)

SEEN = collections.Counter()


def search(server, origins, number, examples):
    chosen = settings(max_examples=examples, deadline=None, database=None, print_blob=False,
                      phases=(Phase.generate, Phase.shrink),
                      suppress_health_check=list(HealthCheck))

    @seed(number)
    @chosen
    @given(REQUESTS)
    def is_sent(request):
        check_sent(server, request, SEEN)

    @seed(number)
    @chosen
    @given(URLS)
    def is_one_origin(url):
        check_origin(origins, url, SEEN)

    is_sent()
    is_one_origin()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--examples', type=int, default=2000,
                        help='of requests, and of URLs, in a round')
    parser.add_argument('--minutes', type=float, default=0,
                        help='of more rounds, each with the next seed')
    parser.add_argument('--largest', type=int, default=2 ** 20,
                        help='URL whose time is measured, in characters')
    options = parser.parse_args()
    server, origins, number = Server(), Origins(), options.seed
    end = time.monotonic() + options.minutes * 60
    try:
        for what, make in GROWING_URLS.items():
            check_linear(what, lambda length, make=make: origins.ask(make(length)), 2 ** 12,
                         options.largest)
        search(server, origins, number, options.examples)
        while time.monotonic() < end:
            number += 1
            search(server, origins, number, options.examples)
    except Exception as error:
        sys.exit(f'BROKEN, with --seed {number}: {error}')
    print(', '.join(f'{count} {what}' for what, count in SEEN.items()) +
          f'; {len(GROWING_URLS)} URLs that grow in linear time')


if __name__ == '__main__':
    main()
