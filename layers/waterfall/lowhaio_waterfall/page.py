"""Timelines as a page, made of `page.html`.

It is a list of disclosures: without scripts it can be read, and with the keyboard it can be
opened. The script sorts it, and shows what is in them under the mouse.
"""

from __future__ import annotations

import html as markup
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from string import Template

from .redaction import redacted
from .terminal import (
    Waterfall,
    failed_in,
    field_lines,
    lines_of,
    outcome,
    seconds_text,
    shown,
    size_text,
    state,
)
from .timelines import PHASES, Timeline

# A target that was given may be no good URL, and is shown all the same.
URL = re.compile('[^:]*://([^/?#]*)([^#]*)')


def html(timelines: Iterable[Timeline], *, with_secrets: bool = False) -> str:
    """The timelines as a page that needs no other file and no network.

    Secrets in URLs and headers are replaced by `REDACTED` unless they are wanted.
    """
    timelines = tuple(timelines)
    scale = Waterfall(timelines)
    names = {span.name for timeline in timelines for span in timeline.phases}
    failed = sum(timeline.failure is not None for timeline in timelines)
    summary = [f'{len(timelines)} request{"" if len(timelines) == 1 else "s"}',
               f'{failed} failed' if failed else '',
               f'{size_text(sum(timeline.sizes.body for timeline in timelines))} received',
               f'{seconds_text(scale.length)} in all',
               f'from {timelines[0].started_at:%Y-%m-%d %H:%M:%S} UTC' if timelines else '']
    return template().substitute(
        summary=', '.join(filter(None, summary)),
        legend=''.join(f'<li><i class="{name}"></i>{name}</li>' for name in PHASES
                       if name in names),
        axis=''.join(f'<span>{seconds_text(scale.length * part / 4) if part else 0}</span>'
                     for part in range(4)),
        rows='\n'.join(html_row(timeline, scale, with_secrets) for timeline in timelines))


def html_row(timeline: Timeline, scale: Waterfall, with_secrets: bool) -> str:
    url = redacted(timeline.url, with_secrets)
    parts = URL.match(url)
    assert parts is not None  # it has a scheme
    spans = ''.join(
        f'<i class="{span.name}" style="left:{100 * scale.share(span.started):.3f}%;'
        f'width:{100 * span.duration / scale.length:.3f}%"></i>' for span in timeline.phases)
    return (
        f'<li data-start="{timeline.started - scale.begin:.9f}" '
        f'data-duration="{timeline.duration:.9f}"><details><summary>'
        f'<span class="name"><b>{tagless(timeline.method)}</b> {tagless(parts[2])} '
        f'<small>{tagless(parts[1])}</small></span>'
        f'<span class="code {state(timeline)}">{outcome(timeline, short=True)}</span>'
        f'<span class="size">{size_text(timeline.sizes.body)}</span>'
        f'<span class="time">{seconds_text(timeline.duration)}</span>'
        f'<span class="bar">{spans}</span></summary>'
        f'{html_details(timeline, url, with_secrets)}</details></li>')


def html_details(timeline: Timeline, url: str, with_secrets: bool) -> str:
    block = Waterfall((timeline,))
    facts = [tagless(url), ' · '.join(map(tagless, block.facts(timeline)))]
    if timeline.failure is not None:
        facts.append(tagless(f'{failed_in(timeline)}: {timeline.failure}'))
    lines = ''.join(
        f'<tr><th scope="row"><i class="{line.label}"></i>{line.label}</th>'
        f'<td>{seconds_text(line.duration)}</td><td>{tagless(line.note)}</td></tr>'
        for line in lines_of(timeline))
    fields = '\n'.join(field_lines(timeline, with_secrets))
    return (f'<div class="more">{"".join(f"<p>{fact}</p>" for fact in facts)}'
            f'<table>{lines}</table>{f"<pre>{tagless(fields)}</pre>" if fields else ""}</div>')


def tagless(text: str) -> str:
    """A text for a page: what is markup in it is shown as it is."""
    return markup.escape('\n'.join(map(shown, text.split('\n'))))


@cache
def template() -> Template:
    return Template(Path(__file__).with_name('page.html').read_text(encoding='utf-8'))
