"""Searches for bytes of a server that are read in a wrong way.

    python fuzz/parsers.py --seed 1
    python fuzz/parsers.py --minutes 60
    python fuzz/parsers.py --minutes 60 --atheris

The bytes are random, almost a response, or a response that was changed in a few places. They are
given to a request in arbitrary pieces, and these promises are kept:

- they become a response or an HttpError, which is the same however they are cut;
- nothing spins while the client waits for the rest of a response;
- what is accepted is read in the same way by h11 and httptools, except for a list of differences
  with their reasons, which is printed with how often each was met;
- four times as many bytes take at most eight times the CPU, with the limits raised so that all is
  read;
- the memory that a response takes is bounded, whatever it repeats without end.

With --atheris, which has wheels for CPython 3.11, the choice of bytes is guided by the lines of
lowhaio.py that they reach.
"""
import argparse
import collections
import os
import sys
import tempfile
import time
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

if '--atheris' in sys.argv:
    import atheris

    with atheris.instrument_imports(include=['lowhaio']):
        import lowhaio  # noqa: F401

from strategies import (
    ANYTHING,
    BOUNDLESS,
    CUTS,
    DIFFERENCES,
    ENDLESS,
    GROWING,
    METHODS,
    RIGHT,
    SPECIAL,
    Client,
    check_linear,
    check_memory,
    check_parsed,
)

SEEN = collections.Counter()


def search(client, number, examples):
    @seed(number)
    @settings(max_examples=examples, deadline=None, database=None, print_blob=False,
              phases=(Phase.generate, Phase.shrink), suppress_health_check=list(HealthCheck))
    @given(ANYTHING, CUTS, METHODS)
    def is_parsed(data, cuts, method):
        check_parsed(client, data, cuts, method, SEEN)

    is_parsed()


def measure(client, largest):
    for what, make in GROWING.items():
        check_linear(what, lambda length, make=make: client.outcome(make(length), **BOUNDLESS),
                     2 ** 15, largest)
    for what in ENDLESS:
        check_memory(client, what, 2 ** 20, 2 ** 19)


def report():
    for what, count in sorted(SEEN.items(), key=str):
        if isinstance(what, str):
            print(f'{count:9,} {what}')
    print('What is accepted and others do not read so:')
    for known in DIFFERENCES:
        print(f'{SEEN[known]:9,} {known.parser}: {known.reason}')
    tried = sum(count for what, count in SEEN.items() if isinstance(what, str))
    print(f'{tried:,} responses, {SEEN["accepted"]:,} of them accepted; {len(GROWING)} that grow '
          f'in linear time; {len(ENDLESS)} without end in little memory', flush=True)


def led_by_lines(client, number, end):
    """Let atheris choose the bytes. This does not return, since libFuzzer ends the process."""
    def is_parsed(raw):
        try:
            check_parsed(client, raw[3:], raw[1:3], b'HEAD' if raw[:1] == b'\1' else b'GET', SEEN)
        except Exception as error:
            print(f'BROKEN: {error}', flush=True)
            os._exit(1)
        if time.monotonic() > end:
            report()
            os._exit(0)

    directory = Path(tempfile.mkdtemp())
    (directory / 'corpus').mkdir()
    for index, data in enumerate(RIGHT):
        (directory / 'corpus' / str(index)).write_bytes(b'\0\0\0' + data)
    (directory / 'dictionary').write_text(''.join(
        '"' + ''.join(f'\\x{byte:02x}' for byte in data) + '"\n' for data in SPECIAL))
    atheris.Setup([sys.argv[0], f'-seed={number + 1}', f'-dict={directory / "dictionary"}',
                   '-max_len=400', '-verbosity=0', str(directory / 'corpus')], is_parsed)
    atheris.Fuzz()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--examples', type=int, default=2000, help='in a round')
    parser.add_argument('--largest', type=int, default=2 ** 19,
                        help='response whose time is measured, in bytes')
    parser.add_argument('--atheris', action='store_true', help='in place of examples')
    parser.add_argument('--minutes', type=float, default=0,
                        help='of more rounds, each with the next seed, or of atheris')
    options = parser.parse_args()
    client, number = Client(), options.seed
    end = time.monotonic() + options.minutes * 60
    try:
        measure(client, options.largest)
        if options.atheris:
            led_by_lines(client, number, end)
        search(client, number, options.examples)
        while time.monotonic() < end:
            number += 1
            search(client, number, options.examples)
    except Exception as error:
        sys.exit(f'BROKEN, with --seed {number}: {error}')
    report()


if __name__ == '__main__':
    main()
