"""Properties of lowhaio that hypothesis tries to refute, with the same examples in each run.

    python -m pytest tests/test_properties.py
    LOWHAIO_EXAMPLES=50000 python -m pytest tests/test_properties.py

The searches of the directory fuzz look for the same in the long run, with other examples.
"""
import collections
import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

# At the end: none of its modules is to hide another one.
sys.path.append(str(Path(__file__).parents[1] / 'fuzz'))

from answers import TRANSPORTS, search  # noqa: E402
from strategies import (  # noqa: E402
    ANYTHING,
    BOUNDLESS,
    CUTS,
    ENDLESS,
    GROWING,
    GROWING_URLS,
    METHODS,
    REQUESTS,
    URLS,
    Client,
    Origins,
    Server,
    check_linear,
    check_memory,
    check_origin,
    check_parsed,
    check_sent,
)

EXAMPLES = int(os.environ.get('LOWHAIO_EXAMPLES', '80'))
settings.register_profile(
    'always the same', max_examples=EXAMPLES, derandomize=True, deadline=None, database=None,
    print_blob=False, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
settings.load_profile('always the same')


@pytest.fixture(scope='module')
def client():
    client = Client()
    yield client
    client.close()


@pytest.fixture(scope='module')
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope='module')
def origins():
    origins = Origins()
    yield origins
    origins.close()


@pytest.mark.parametrize('transport', TRANSPORTS)
def test_no_request_is_given_what_is_not_its_answer(transport):
    search(transport, 'asyncio', EXAMPLES // 8, 30)


@given(ANYTHING, CUTS, METHODS)
def test_bytes_are_a_response_or_an_error_however_cut_and_what_other_parsers_say(
        client, data, cuts, method):
    check_parsed(client, data, cuts, method, collections.Counter())


@given(REQUESTS)
def test_a_request_is_refused_or_arrives_as_it_was_given(server, request):
    check_sent(server, request, collections.Counter())


@given(URLS)
def test_where_a_url_leads_to_is_one_host_to_all_who_are_told(origins, url):
    check_origin(origins, url, collections.Counter())


@pytest.mark.parametrize('what', GROWING)
def test_a_response_takes_time_in_proportion_to_its_length(client, what):
    check_linear(what, lambda length: client.outcome(GROWING[what](length), **BOUNDLESS),
                 2 ** 15, 2 ** 19, enough=0.01)


@pytest.mark.parametrize('what', GROWING_URLS)
def test_a_url_takes_time_in_proportion_to_its_length(origins, what):
    check_linear(what, lambda length: origins.ask(GROWING_URLS[what](length)), 2 ** 12, 2 ** 18,
                 enough=0.01)


@pytest.mark.parametrize('what', ENDLESS)
def test_a_response_without_end_takes_bounded_memory(client, what):
    check_memory(client, what, 2 ** 19, 2 ** 18)
