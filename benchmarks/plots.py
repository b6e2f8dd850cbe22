"""The plots of run.py: bars, sorted by value, in pictures that are narrow enough for a phone.

A picture has a background of its own, light or dark as the reader prefers, so that it can be read
wherever it is shown.
"""
import math
from html import escape

from report import WITHOUT_TURNS, median

WIDTH = 400
LABELS = 116  # the room for the names of clients
VALUES = 52  # the room for the numbers after the bars
BAR, STEP = 14, 20
# A panel has a logarithmic scale if its bars differ by more than this, rather than cut some off.
LINEAR = 25

STYLE = '''
text { font: 13px -apple-system, "Segoe UI", "DejaVu Sans", Helvetica, Arial, sans-serif;
       fill: #1f2328 }
.title { font-size: 16px; font-weight: 600 } .panel { font-weight: 600 }
.own { font-weight: 700 } .note { font-size: 10.5px; fill: #59636e }
.back { fill: #ffffff; stroke: #d1d9e0 } .peer { fill: #8fb8de }
.floor { fill: #9a9fa5 } .lowhaio { fill: #d1242f }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc } .note { fill: #9198a1 } .back { fill: #0d1117; stroke: #3d444d }
.peer { fill: #3f6f9f } .floor { fill: #767d86 } .lowhaio { fill: #f85149 }
}
'''

# For each file: the title, whether more is better, the key and its factor, and the panels.
PLOTS = {
    'requests.svg': ('CPU of a request, µs: less is better', False, 'cpu', 1e6, {
        'small': 'GET of 100 bytes, one at a time', 'small-32': '32 at once'}),
    'more-requests.svg': ('CPU of a request, µs: less is better', False, 'cpu', 1e6, {
        'small-fields': 'GET with 4 request fields', 'post': 'POST of 1 KiB',
        'connect': 'each on a new connection', 'tls': 'GET over TLS, one at a time',
        'tls-32': 'over TLS, 32 at once'}),
    'latency.svg': ('Latency, ms: less is better', False, 'p99', 1e3, {
        'latency': '99th percentile, 1,000 GETs a second'}),
    'bulk.svg': ('MB per CPU second: more is better', True, 'speed', 1e-6, {
        'download': 'download', 'upload': 'upload', 'tls-download': 'download over TLS',
        'tls-upload': 'upload over TLS'}),
    'memory.svg': ('Memory of a request, KiB: less is better', False, 'flight', 2 ** -10, {
        'memory': '1,000 wait for their responses'}),
}


def draw(runs, results, directory):
    run = runs[0]
    dates = run['date'] if len(runs) == 1 else \
        f'{run["date"]} to {runs[-1]["date"]}, {len(runs)} runs'
    notes = (dates, f'{run["python"]}, {run["loop"]}, {run["openssl"]}', run['machine'],
             f'{run["kernel"]}, nginx {run["nginx"]}')
    for file, (title, is_more_better, key, factor, names) in PLOTS.items():
        panels = {what: values for name, what in names.items()
                  if (values := values_of(results, name, key, factor))}
        if panels:
            (directory / file).write_text(picture(title, is_more_better, panels, notes))


def values_of(results, name, key, factor):
    found = {client: median(results, client, name, key) for client in results.get(name, ())
             if client != WITHOUT_TURNS}
    return {client: value * factor for client, value in found.items() if value is not None}


def picture(title, is_more_better, panels, notes):
    parts, y = [text(16, 28, title, 'title')], 36
    for what, values in panels.items():
        is_log = max(values.values()) > LINEAR * min(values.values())
        scale = ' (log scale)' if is_log else ''
        parts.append(text(16, y + 20, what + scale, 'panel'))
        y += 30
        bars = sorted(values.items(), key=lambda bar: bar[1], reverse=is_more_better)
        for client, value in bars:
            parts += bar(y, client, value, length(value, values.values(), is_log))
            y += STEP
        y += 8
    for note in notes:
        y += 15
        parts.append(text(16, y, note, 'note'))
    height = y + 14
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" role="img">\n'
            f'<title>{escape(title)}</title>\n<style>{STYLE}</style>\n'
            f'<rect class="back" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" '
            'rx="8"/>\n' + '\n'.join(parts) + '\n</svg>\n')


def length(value, values, is_log):
    room = WIDTH - LABELS - VALUES - 16
    if not is_log:
        return room * value / max(values)
    # The shortest bar has a tenth of the room, as nothing has the logarithm of nothing.
    least, most = math.log(min(values)), math.log(max(values))
    return room * (0.1 + 0.9 * (math.log(value) - least) / (most - least))


def bar(y, client, value, width):
    kind = client if client in ('floor', 'lowhaio') else 'peer'
    label = 'own' if client == 'lowhaio' else ''
    digits = f'{value:,.0f}' if value >= 100 else f'{value:,.1f}' if value >= 10 else \
        f'{value:,.2f}'
    yield text(LABELS - 6, y + 11.5, client, label, 'end')
    yield (f'<rect class="{kind}" x="{LABELS}" y="{y}" width="{width:.1f}" height="{BAR}" '
           'rx="2"/>')
    yield text(LABELS + width + 5, y + 11.5, digits, label)


def text(x, y, content, kind='', anchor='start'):
    return (f'<text class="{kind}" x="{x:.1f}" y="{y}" text-anchor="{anchor}">'
            f'{escape(content)}</text>')
