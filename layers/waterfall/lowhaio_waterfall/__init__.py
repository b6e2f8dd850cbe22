"""Shows what requests of lowhaio do, as a waterfall: in the terminal, as JSON, HAR and HTML.

::

    python -m lowhaio_waterfall https://www.example.com/

Or of the requests of a program::

    recorder = Recorder()
    request, close = Pool(on_event=recorder)
    ...
    Path('page.html').write_text(html(recorder.timelines))

A pool tells a `Recorder` what happens, and that makes a `Timeline` of each request
(`timelines.py`). `phases` of it tile the time from the request's begin to its end. `timings` and
`har` (`archive.py`), `Waterfall` (`terminal.py`) and `html` (`page.py`) show timelines, and change
nothing. What they leave out is in `redaction.py`, and the command is in `command.py`.
"""

from .archive import har, timings
from .command import main
from .page import html
from .terminal import Waterfall
from .timelines import (
    PHASES,
    Attempt,
    Connection,
    Failure,
    Lookup,
    Recorder,
    Response,
    Sizes,
    Span,
    Timeline,
    Tls,
)

__all__ = [
    'PHASES', 'Attempt', 'Connection', 'Failure', 'Lookup', 'Recorder', 'Response', 'Sizes',
    'Span', 'Timeline', 'Tls', 'Waterfall', 'har', 'html', 'main', 'timings',
]
