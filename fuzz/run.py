"""Runs a share of each search, in some two minutes. Which share depends on the seed.

It prints a line about what each search has tried. At the first promise that was not kept, it
prints what that search says and how to repeat it, and exits with 1.
"""

import argparse
import pathlib
import subprocess
import sys
import time

# The name of each search, its arguments for a share, and those for all of it. The share of the
# soak leaves out the CPU, which cannot be measured in a short time on a machine that does other
# things. mutants.py has no share. It runs all tests once before its first change. And a share
# would have other changes at each commit, one of which might survive that has nothing to do with
# the commit.
SEARCHES = (
    ('cancellation', '--every 64 --seed {seed}', ''),
    ('faults', '--every 100 --seed {seed}', ''),
    ('stops', '--every 81 --seed {seed}', ''),
    ('both_ways', '--examples 300 --seed {seed}', '--minutes 60 --seed {seed}'),
    ('answers', '--examples 100 --seed {seed}', '--minutes 60 --seed {seed}'),
    ('parsers', '--examples 1000 --seed {seed}', '--examples 1000000 --seed {seed}'),
    ('outgoing', '--examples 1000 --seed {seed}', '--examples 1000000 --seed {seed}'),
    ('names', '--minutes 2 --seed {seed}', '--minutes 60 --seed {seed}'),
    ('soak', '--decks 3 --intervals 6 --seed {seed}', '--minutes 60 --seed {seed}'),
)


def run(name, arguments):
    """Run a search, and return whether all promises were kept.

    The last line that a search prints tells what it has tried.
    """
    start = time.monotonic()
    path = pathlib.Path(__file__).with_name(f'{name}.py')
    done = subprocess.run(
        [sys.executable, path, *arguments.split()], stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=False)
    lines = done.stdout.splitlines() or ['no output']
    if done.returncode:
        print(*lines, f'{name} failed. To repeat it: python fuzz/{name}.py {arguments}', sep='\n')
        return False
    print(f'{name} {arguments} ({time.monotonic() - start:.0f} s): {lines[-1]}', flush=True)
    return True


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('searches', nargs='*', metavar='SEARCH', help='all, unless given')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--full', action='store_true', help='all of each: for hours')
    args = parser.parse_args()
    unknown = set(args.searches).difference(name for name, _, _ in SEARCHES)
    if unknown:
        parser.error(f'there is no search called {", ".join(unknown)}')
    for name, quick, full in SEARCHES:
        arguments = full if args.full else quick
        if args.searches and name not in args.searches:
            continue
        if not run(name, arguments.format(seed=args.seed)):
            sys.exit(1)
    print('No promise was broken')


if __name__ == '__main__':
    main()
