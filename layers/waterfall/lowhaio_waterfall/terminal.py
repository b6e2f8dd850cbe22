"""Timelines in a terminal, by `rich`, which is imported once it is needed.

Lines are made to the width that there is, so that nothing wraps. A bar is drawn in halves of
cells, and is half a cell long at least. What servers and errors say has no control characters, by
which a server could write to the terminal what it likes.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from .redaction import redacted, shown_fields
from .timelines import PHASES, Timeline

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.text import Text

STYLES = {'client': 'bright_black', 'place': 'white', 'lookup': 'cyan', 'connect': 'yellow',
          'tls': 'magenta', 'send': 'bright_magenta', 'wait': 'green', 'head': 'blue',
          'body': 'bright_blue'}

OUTCOMES = {'good': 'green', 'poor': 'yellow', 'bad': 'red'}

# What stands for each phase where there are no colours.
LETTERS = {'client': '.', 'place': 'p', 'lookup': 'l', 'connect': 'c', 'tls': 't', 'send': 's',
           'wait': 'w', 'head': 'h', 'body': 'b'}

# What a terminal shows that has ASCII only.
ASCII = str.maketrans({'━': '=', '╸': '-', '╺': '-', 'µ': 'u', '·': '|', '…': '~'})

CONTROL = re.compile('[\x00-\x1f\x7f-\x9f]')

# The columns of one request: the phase, a place for the bar, the time, and notes.
LABEL_WIDTH, TIME_WIDTH, MIN_BAR, MAX_NOTE = 7, 7, 10, 0.42

# A phase without which nothing is missed takes less than this share of the time.
NEGLIGIBLE = 0.01


class Line(NamedTuple):
    """One row of a request's waterfall."""

    label: str
    style: str
    spans: tuple[tuple[float, float], ...]
    note: str

    @property
    def duration(self) -> float:
        return sum(ended - started for started, ended in self.spans)


class Waterfall:
    """Timelines for `print` of `rich`, or a `rich.console.Console`, all on one scale.

    Each is a block with a line for each phase, or, with `is_overview`, a single line. `headers`
    adds the fields of requests and responses, and `with_secrets` what is secret in these.
    """

    def __init__(self, timelines: Iterable[Timeline], *, is_overview: bool = False,
                 headers: bool = False, with_secrets: bool = False) -> None:
        self.timelines = tuple(timelines)
        self.is_overview = is_overview
        self.headers = headers
        self.with_secrets = with_secrets
        self.begin = min((each.started for each in self.timelines), default=0.0)
        # Never 0, because it is divided by.
        self.length = max((each.last for each in self.timelines), default=0.0) - self.begin or 1e-9

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        if self.is_overview:
            lines = self.overview(width, console.color_system is not None and not console.no_color)
        else:
            widths = self.widths(width)
            lines = (line for timeline in self.timelines
                     for line in self.block(timeline, width, *widths))
        for line in lines:
            line.no_wrap, line.overflow = True, 'crop'
            if options.ascii_only:
                line.plain = line.plain.translate(ASCII).encode('ascii', 'replace').decode()
            yield line

    # One request in full

    def widths(self, width: int) -> tuple[int, int]:
        """Those of the bars and of the notes, alike for all, since the bars are on one scale."""
        longest = max((len(line.note) for each in self.timelines for line in lines_of(each)),
                      default=0)
        rest = width - LABEL_WIDTH - TIME_WIDTH - 6
        note_width = max(0, min(longest, int(width * MAX_NOTE), rest - MIN_BAR))
        return max(1, rest - note_width), note_width

    def block(self, timeline: Timeline, width: int, bar_width: int,
              note_width: int) -> Iterator[Text]:
        from rich.text import Text

        yield Text(cut(f'{timeline.method} {redacted(timeline.url, self.with_secrets)}', width),
                   'bold')
        for number, line in enumerate(filled(self.facts(timeline), width - 2)):
            yield Text('  ').append(
                shown(line), OUTCOMES[state(timeline)] if number == 0 else 'dim')
        if timeline.failure is not None:
            for line in folded(f'{failed_in(timeline)}: {timeline.failure}', width - 2):
                yield Text('  ').append(line, 'red')
        if self.headers:
            for line in field_lines(timeline, self.with_secrets):
                yield Text('  ').append(cut(line, width - 2), 'dim')
        yield from self.bars(timeline, bar_width, note_width)
        yield Text('')

    def facts(self, timeline: Timeline) -> Iterator[str]:
        """What is known apart from times, the outcome first."""
        yield outcome(timeline)
        if timeline.response is not None:
            yield timeline.response.http_version
        connection = timeline.connection
        if connection is not None:
            if connection.peer is not None:
                yield connection.peer
            if connection.tls_version is not None:
                yield f'{connection.tls_version} {connection.cipher}'
            yield f'connection {connection.number}, ' + (
                'new' if connection.request == 1 else f'its request {connection.request}')
        if timeline.closing is not None:
            yield f'then closed: {timeline.closing}'

    def bars(self, timeline: Timeline, bar_width: int, note_width: int) -> Iterator[Text]:
        from rich.text import Text

        total = Line('total', 'bold', ((timeline.started, timeline.last),), '')
        for line in (*lines_of(timeline), total):
            text = Text('  ').append(f'{line.label:{LABEL_WIDTH}} ')
            text.append(self.bar(line.spans, bar_width), line.style)
            text.append(f' {seconds_text(line.duration):>{TIME_WIDTH}}')
            if line.note and note_width:
                text.append(f'  {cut(line.note, note_width)}', 'dim')
            yield text

    def bar(self, spans: Iterable[tuple[float, float]], width: int) -> str:
        halves = [False] * (2 * width)
        for started, ended in spans:
            first = min(int(self.share(started) * len(halves)), len(halves) - 1)
            last = max(first + 1, math.ceil(self.share(ended) * len(halves)))
            halves[first:last] = [True] * (min(last, len(halves)) - first)
        cells = {(True, True): '━', (True, False): '╸', (False, True): '╺', (False, False): ' '}
        return ''.join(cells[pair] for pair in zip(halves[::2], halves[1::2], strict=True))

    def share(self, time: float) -> float:
        return (time - self.begin) / self.length

    # Many requests, a line each

    def overview(self, width: int, has_colours: bool) -> Iterator[Text]:
        from rich.text import Text

        names = list(dict.fromkeys(
            span.name for each in self.timelines for span in each.phases))
        legend = Text('')
        for name in sorted(names, key=PHASES.index):
            legend.append('━━' if has_colours else LETTERS[name], STYLES[name])
            legend.append(f' {name}  ')
        legend.rstrip()
        yield legend
        labels = [shown(label) for label in self.labels()]
        label_width = min(max(map(len, labels), default=0), max(8, int((width - 28) * 0.45)))
        for timeline, label in zip(self.timelines, labels, strict=True):
            yield self.overview_line(timeline, f'{shortened(label, label_width):{label_width}}',
                                     width - label_width - 27, has_colours)

    def labels(self) -> Iterator[str]:
        """Method and path of each request, and where it goes to if they go to several hosts."""
        is_one_origin = len({each.origin for each in self.timelines}) == 1
        for timeline in self.timelines:
            url = redacted(timeline.url, self.with_secrets)
            _, _, rest = url.partition('://')
            yield f'{timeline.method} {rest[rest.find("/"):] if is_one_origin else rest}'

    def overview_line(self, timeline: Timeline, label: str, bar_width: int,
                      has_colours: bool) -> Text:
        from rich.text import Text

        text = Text(f'{label} ')
        text.append(f'{outcome(timeline, short=True):>6} ', OUTCOMES[state(timeline)])
        text.append(f'{size_text(timeline.sizes.body):>7} {seconds_text(timeline.duration):>7}  ')
        for name, run in groupby(self.cells(timeline, max(1, bar_width))):
            cell = ' ' if not name else '━' if has_colours else LETTERS[name]
            text.append(cell * len(list(run)), STYLES.get(name, ''))
        return text

    def cells(self, timeline: Timeline, width: int) -> list[str]:
        """For each cell of the line, the phase that takes most of its time."""
        most = [0.0] * width
        cells = [''] * width
        for span in timeline.phases:
            first, last = self.share(span.started) * width, self.share(span.ended) * width
            for number in range(min(int(first), width - 1), min(math.ceil(last), width)):
                part = min(last, number + 1) - max(first, number)
                if part > most[number]:
                    most[number], cells[number] = part, span.name
        return cells


def field_lines(timeline: Timeline, with_secrets: bool) -> Iterator[str]:
    """The fields of the request and those of the response."""
    received = timeline.response.headers if timeline.response is not None else ()
    for mark, fields in ('>', timeline.headers), ('<', received):
        for name, value in shown_fields(fields, with_secrets):
            yield f'{mark} {name}: {value}'


def lines_of(timeline: Timeline) -> Iterator[Line]:
    """The rows of a request: its phases, with one for each lookup and each attempt to connect."""
    durations = timeline.durations
    for name in PHASES:
        spans = tuple((span.started, span.ended) for span in timeline.phases if span.name == name)
        if name == 'lookup':
            yield from lookup_lines(timeline)
        elif name == 'connect':
            yield from attempt_lines(timeline)
        elif spans and (name != 'client' or durations[name] > NEGLIGIBLE * timeline.duration):
            yield Line(name, STYLES[name], spans, note(name, timeline))


def lookup_lines(timeline: Timeline) -> Iterator[Line]:
    for each in timeline.lookups:
        yield Line('lookup', 'red' if each.failure else STYLES['lookup'],
                   ((each.started, each.ended),),
                   str(each.failure) if each.failure else ', '.join(each.addresses))


def attempt_lines(timeline: Timeline) -> Iterator[Line]:
    for each in timeline.attempts:
        ending = '' if each.outcome == 'connected' else f' {each.outcome}'
        reason = f': {each.failure.message}' if each.failure else ''
        yield Line('connect', 'red' if each.failure else STYLES['connect'],
                   ((each.started, each.ended),), f'{each.peer}{ending}{reason}')


def note(name: str, timeline: Timeline) -> str:
    """What is known of a phase apart from its time."""
    seconds = timeline.durations[name]
    if name == 'tls' and timeline.tls is not None:
        tls = timeline.tls
        return str(tls.failure) if tls.failure else (
            f'{tls.version}, {"resumed" if tls.is_resumed else "new session"}')
    sizes = timeline.sizes
    if name == 'send':
        body = f' + {size_text(sizes.sent_body)}' if sizes.sent_body else ''
        return f'{size_text(sizes.sent_head)}{body}{rate_text(sizes.sent_body, seconds)}'
    if name == 'head':
        return size_text(sizes.head)
    if name == 'body':
        return f'{size_text(sizes.body)}{rate_text(sizes.body, seconds)}'
    return ''


def failed_in(timeline: Timeline) -> str:
    phase = timeline.failure.phase if timeline.failure is not None else None
    phase = phase or next((span.name for span in reversed(timeline.phases)), None)
    return f'failed in {phase}' if phase else 'failed'


def outcome(timeline: Timeline, short: bool = False) -> str:
    response = timeline.response
    if timeline.failure is not None and (response is None or short):
        return 'failed'
    if response is None:
        return 'open' if short else 'not answered yet'
    return str(response.code) if short else f'{response.code} {response.reason}'.strip()


def state(timeline: Timeline) -> str:
    """How bad the outcome is: `'good'`, `'poor'` or `'bad'`."""
    if timeline.failure is not None:
        return 'bad'
    return 'poor' if timeline.response is not None and timeline.response.code >= 400 else 'good'


def shown(text: str) -> str:
    """A text without control characters."""
    return CONTROL.sub('\N{REPLACEMENT CHARACTER}', text)


def cut(text: str, width: int) -> str:
    """A text without its end, if it is too long."""
    text = shown(text)
    return text if len(text) <= width else f'{text[:max(0, width - 1)]}…'


def shortened(text: str, width: int) -> str:
    """A text without its middle, if it is too long: URLs differ at their ends."""
    if len(text) <= width:
        return text
    end = (width - 1) * 2 // 3
    return f'{text[:width - 1 - end]}…{text[-end:]}'


def folded(text: str, width: int) -> list[str]:
    """A text in lines. What is too long for one is broken anywhere."""
    return filled(shown(text).split(), width, ' ')


def filled(parts: Iterable[str], width: int, separator: str = ' · ') -> list[str]:
    """Parts in as few lines as they fit into."""
    width = max(1, width)
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(separator) + len(part) <= width:
            lines[-1] += separator + part
        else:
            lines += [part[begin:begin + width] for begin in range(0, len(part), width)]
    return lines


def seconds_text(seconds: float) -> str:
    """A duration with three digits: `'12.3 ms'`."""
    for factor, unit in (1e6, 'µs'), (1e3, 'ms'):
        if seconds * factor < 999.5:
            return f'{digits(seconds * factor)} {unit}'
    return f'{digits(seconds)} s' if seconds < 999.5 else f'{seconds / 60:.0f} min'


def size_text(size: float) -> str:
    """A number of bytes with up to three digits, by powers of 1000: `'1.23 MB'`."""
    if size < 1000:
        return f'{size:.0f} B'
    for factor, unit in (1e3, 'kB'), (1e6, 'MB'), (1e9, 'GB'):
        if size / factor < 999.5:
            return f'{digits(size / factor)} {unit}'
    return f'{size / 1e12:.1f} TB'


def rate_text(size: int, seconds: float) -> str:
    """Bytes for each second. What takes less than a millisecond was there already."""
    return f', {size_text(size / seconds)}/s' if size and seconds >= 0.001 else ''


def digits(number: float) -> str:
    return f'{number:.0f}' if number < 0.05 or number >= 99.95 else (
        f'{number:.1f}' if number >= 9.995 else f'{number:.2f}')


# ---------------------------------------------------------------------------- many as numbers

class Figures(NamedTuple):
    """What requests took in one phase, in seconds."""

    name: str
    requests: int
    minimum: float
    median: float
    p95: float
    maximum: float


def figures(timelines: Sequence[Timeline]) -> list[Figures]:
    """The figures of each phase, over the requests that had it, and of the whole."""
    durations = [timeline.durations for timeline in timelines]
    values = {name: sorted(each[name] for each in durations if name in each) for name in PHASES}
    values['total'] = sorted(timeline.duration for timeline in timelines)
    return [Figures(name, len(each), each[0], statistics.median(each),
                    each[math.ceil(0.95 * len(each)) - 1], each[-1])
            for name, each in values.items() if each]


def figures_table(timelines: Sequence[Timeline]) -> Any:
    """The figures, as a table of `rich`."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column('phase', no_wrap=True)
    for name in 'requests', 'min', 'median', 'p95', 'max':
        table.add_column(name, justify='right', no_wrap=True)
    for row in figures(timelines):
        table.add_row(row.name, str(row.requests), *map(seconds_text, row[2:]),
                      style='bold' if row.name == 'total' else None)
    return table
