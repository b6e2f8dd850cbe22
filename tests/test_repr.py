"""What a debugger shows of the objects of the module."""

import gc

from lowhaio import Pool, buffered, repeatable, streamed
from tests.harness import on_one_loop, yielding


def shown(type_name):
    """What the objects of a type that are alive now look like, those of other tests too."""
    return {repr(each) for each in gc.get_objects()
            if type(each).__module__ == 'lowhaio' and type(each).__name__ == type_name}


def test_a_body_in_memory_shows_its_length_and_not_its_content():
    assert repr(streamed(b'secret')) == '<streamed 6 bytes>'


@on_one_loop
async def test_a_repeatable_body_shows_what_it_calls_and_if_there_was_content():
    body = repeatable(yielding)
    assert repr(body) == f'<repeatable {yielding!r}>'
    chunks = body(b'', b'abc')
    assert repr(chunks) == '<WatchedChunks empty so far>'
    assert await buffered(chunks) == b'abc'
    assert repr(chunks) == '<WatchedChunks with content>'


def test_the_settings_show_the_options_that_connections_follow():
    pool = Pool(http_version=b'HTTP/1.0', keep_alive_timeout=1.5, socket_timeout=7)
    settings = ('<Settings persists_unasked=False keep_alive_timeout=1.5 recv_bufsize=122880 '
                'max_header_length=16384 socket_timeout=7 max_requests=inf>')
    assert settings in shown('Settings')
    del pool
