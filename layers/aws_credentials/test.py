"""Tests of lowhaio_aws_credentials, with botocore as the oracle: it gets the same variables, files
and services. moto's STS is in tests/outside/test_s3.py.
"""

import asyncio
import contextlib
import copy
import itertools
import json
import logging
import pathlib
import pickle
import re
import sys
import threading
import time
import urllib.parse
from datetime import UTC, datetime

import botocore.credentials
import botocore.loaders
import botocore.session
import pytest

import lowhaio_aws_credentials
from lowhaio import HttpConnectionError, HttpDataError, Pool
from lowhaio_aws_credentials import (
    CredentialsError,
    assumed_role,
    from_botocore,
    from_chain,
    from_container,
    from_environment,
    from_instance,
    from_profile,
    from_web_identity,
    region_of_profile,
)
from lowhaio_aws_sigv4 import signed
from lowhaio_retry import is_lasting, retry
from lowhaio_s3 import Bucket
from tests.harness import (
    Answering,
    Server,
    connecting_to,
    forever,
    get,
    holding,
    internet,
    measured,
    on_clock,
    on_loops,
    on_one_loop,
    pool,
    python_blocks,
    response,
    row,
    run_block,
    turns,
    until,
    unwanted,
    value,
)

HERE = pathlib.Path(__file__).parent
FAR = '2099-01-01T00:00:00Z'
ROLE = 'arn:aws:iam::123456789012:role/'
# Nothing here is a secret but these, so no message may have one of them.
SECRETS = ('s3cret', 't0ken', 'secret-of', 'token-of')


@pytest.fixture(autouse=True)
def files(monkeypatch, tmp_path):
    """No variable of AWS's but those of the files, which are not there yet."""
    for name in list(lowhaio_aws_credentials.os.environ):
        if name.startswith('AWS_'):
            monkeypatch.delenv(name)
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('AWS_CONFIG_FILE', str(tmp_path / 'config'))
    monkeypatch.setenv('AWS_SHARED_CREDENTIALS_FILE', str(tmp_path / 'credentials'))
    monkeypatch.setenv('AWS_EC2_METADATA_DISABLED', 'true')
    return tmp_path


@pytest.fixture
def setenv(monkeypatch):
    """Sets variables for the rest of a test, and takes away those that are None."""
    def setenv(**variables):
        for name, text in variables.items():
            if text is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, text)

    return setenv


class Clock:
    def __init__(self):
        self.now = time.time()

    def time(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """The time of the layer, which only a test lets pass."""
    clock = Clock()
    monkeypatch.setattr(lowhaio_aws_credentials, 'time', clock)
    return clock


def in_seconds(clock, seconds):
    return datetime.fromtimestamp(clock.now + seconds, UTC).isoformat()


# ------------------------------------------------------------------------- the services of AWS


STS_ANSWER = """<{action}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><{action}Result>
<Credentials><AccessKeyId>{id}</AccessKeyId><SecretAccessKey>secret-of-{id}</SecretAccessKey>
<SessionToken>token-of-{id}</SessionToken><Expiration>{end}</Expiration></Credentials>
</{action}Result></{action}Response>"""


class Aws:
    """The services of a container, of an instance and STS, all on one server.

    The keys that they give are named after what was asked for. `changed` has what is answered
    instead, by the path, or by the action of STS.
    """

    def __init__(self, **changed):
        self.changed = changed
        self.asked = []
        self.bodies = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.end = FAR
        self.names = itertools.count(1)

    async def __call__(self, peer):
        while True:
            head = await peer.read_head()
            body = await peer.read_body(head)
            self.bodies.append((head, body))
            self.asked.append(self.what(head, body))
            await self.may_answer.wait()
            await peer.send(self.answer(head, self.asked[-1]))

    def what(self, head, body):
        method, path, _ = head.decode().split(' ', 2)
        if method != 'POST':
            return path
        form = dict(urllib.parse.parse_qsl(body.decode(), strict_parsing=True))
        name = form.pop('RoleSessionName')
        if not re.fullmatch('(botocore-session|lowhaio)-[0-9]{9,}', name):
            form['RoleSessionName'] = name
        assert form.pop('Version') == '2011-06-15'
        if form['Action'] == 'AssumeRole':
            [form['as'], form['in']] = re.match(
                rb'AWS4-HMAC-SHA256 Credential=(.*?)/.{8}/(.*?)/sts/aws4_request',
                value(head, b'authorization')).groups()
            form['token'] = value(head, b'x-amz-security-token')
        else:
            assert value(head, b'authorization') is None
        # botocore sends the file as it is, with the end of its line.
        return {name: each.strip() if each else each for name, each in form.items()}

    def answer(self, head, asked):
        key = asked['Action'] if isinstance(asked, dict) else asked.partition('?')[0]
        changed = self.changed.get(key)
        if changed is not None:
            return changed if isinstance(changed, bytes) else changed(head)
        if isinstance(asked, dict):
            return response(200, STS_ANSWER.format(
                action=key, id=asked['RoleArn'].rpartition('/')[2], end=self.end).encode())
        if key == '/latest/api/token':
            return response(200, b'token-of-imds')
        if key.startswith('/latest/') and value(head, b'x-aws-ec2-metadata-token') is None:
            return response(401)
        if key == '/latest/meta-data/iam/security-credentials/':
            return response(200, b'my-role')
        return response(200, as_json(key.rpartition('/')[2], self.end))


def as_json(name, end=FAR, **more):
    return json.dumps({
        'Code': 'Success', 'AccessKeyId': name, 'SecretAccessKey': f'secret-of-{name}',
        'Token': f'token-of-{name}', 'Expiration': end, **more}).encode()


def keys(name, token=True):
    """What the services above give of this name, as `signed` takes it."""
    return (name, f'secret-of-{name}', (
        (b'x-amz-security-token', f'token-of-{name}'.encode()),) if token else ())


def as_in_file(name):
    return f'aws_access_key_id = {name}\naws_secret_access_key = secret-of-{name}\n'


async def failure_of(credentials):
    """The error that asking for credentials raises. It tells no secret."""
    with pytest.raises(CredentialsError) as caught:
        await credentials()
    assert type(caught.value) is CredentialsError
    assert not any(secret in str(caught.value) for secret in SECRETS)
    return caught.value


# ----------------------------------------------------------------------- what was fetched is kept


class Numbered(Aws):
    """As a container's endpoint, which gives other keys each time."""

    def answer(self, head, asked):
        number = next(self.names)
        changed = self.changed.pop(f'answer {number}', None)
        return changed or response(200, as_json(f'KEY{number}', self.end))

    def __repr__(self):
        return f'{len(self.asked)} were asked for'


@pytest.fixture
def container(setenv):
    """A context of a server with such an endpoint, a request, and credentials."""
    class Container:
        def __init__(self, **changed):
            self.aws = Numbered(**changed)
            self.server = Server(self.aws)

        async def __aenter__(self):
            await self.server.__aenter__()
            setenv(AWS_CONTAINER_CREDENTIALS_FULL_URI=self.server.url)
            request, self.close = Pool()
            self.aws.credentials = from_container(request)
            return self.aws, self.aws.credentials

        async def __aexit__(self, *args):
            await self.close()
            await self.server.__aexit__(*args)

    return Container


@on_loops
async def test_one_fetch_is_for_all_who_ask(container):
    async with container() as (aws, credentials):
        assert await asyncio.gather(*(credentials() for _ in range(1000))) == 1000 * [keys('KEY1')]
        assert await credentials() == keys('KEY1')
        assert len(aws.asked) == 1


@on_loops
async def test_who_asks_is_cancelled_and_the_next_one_fetches(container):
    async with container() as (aws, credentials):
        aws.may_answer.clear()
        tasks = [asyncio.create_task(credentials()) for _ in range(10)]
        for number, task in enumerate(tasks[:4], 1):
            await until(lambda: len(aws.asked) == number)  # noqa: B023
            assert repr(credentials) == ('<Credentials of the container: not fetched, being '
                                         f'fetched, {10 - number} waiting>')
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
        await until(lambda: len(aws.asked) == 5)
        tasks[7].cancel()
        await asyncio.wait([tasks[7]])
        assert repr(credentials).endswith(', 4 waiting>')
        # The one that fetches, one that waits at that moment, and one that was just woken.
        tasks[4].cancel()
        tasks[6].cancel()
        await turns(1)
        tasks[5].cancel()
        await until(lambda: len(aws.asked) == 6)
        aws.may_answer.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in found[:8]] == 8 * [asyncio.CancelledError]
        assert found[8] == found[9]
        assert repr(credentials) == (
            '<Credentials of the container: good until 2099-01-01T00:00:00+00:00>')


@on_loops
async def test_a_cancellation_at_any_moment_leaves_nothing_behind(container):
    """As often as it takes until it comes too late."""
    for number in range(1000):
        async with container() as (aws, credentials):
            first, second = (asyncio.create_task(credentials()) for _ in range(2))
            await turns(number)
            first.cancel()
            await asyncio.wait([first])
            assert (await second)[0] in ('KEY1', 'KEY2')
            assert 'being fetched' not in repr(credentials)
            if not first.cancelled():
                return
    raise AssertionError('it was never too late')


@on_loops
async def test_a_failure_is_raised_to_all_who_wait_and_is_not_kept(container):
    async with container(**{'answer 1': response(500, b'no')}) as (aws, credentials):
        found = await asyncio.gather(*(credentials() for _ in range(100)), return_exceptions=True)
        assert {(type(each), str(each), each.is_lasting) for each in found} == {
            (CredentialsError, 'the container: the endpoint answered 500', False)}
        assert len(set(map(id, found))) == 100
        assert await credentials() == keys('KEY2')


@on_loops
async def test_all_who_wait_are_told_the_cause(container, setenv):
    async with container(**{'answer 1': None}) as (aws, credentials):
        setenv(AWS_CONTAINER_CREDENTIALS_FULL_URI='http://127.0.0.1:1/')
        first, *others = await asyncio.gather(
            *(credentials() for _ in range(10)), return_exceptions=True)
        assert str(first).startswith('the container: HttpConnectionError: GET http://127.0.0.1:1')
        assert type(first.__cause__) is HttpConnectionError
        assert type(first.__cause__.__cause__) is ConnectionRefusedError
        assert not first.is_lasting
        assert not is_lasting(first)
        for other in others:
            assert (str(other), other.__cause__) == (str(first), first.__cause__)


@on_loops
async def test_they_are_renewed_by_one_while_the_others_go_on(container, clock):
    async with container() as (aws, credentials):
        aws.end = in_seconds(clock, 60 * 60)
        assert await credentials() == keys('KEY1')
        clock.now += 45 * 60 - 1
        assert await credentials() == keys('KEY1')
        assert len(aws.asked) == 1
        clock.now += 2
        aws.may_answer.clear()
        task = asyncio.create_task(credentials())
        await until(lambda: len(aws.asked) == 2)
        assert [await credentials() for _ in range(10)] == 10 * [keys('KEY1')]
        clock.now += 61  # also if it takes long
        assert [await credentials() for _ in range(10)] == 10 * [keys('KEY1')]
        assert len(aws.asked) == 2
        aws.may_answer.set()
        assert await task == keys('KEY2')
        assert await credentials() == keys('KEY2')


@on_loops
async def test_in_the_last_minute_all_wait_for_new_ones(container, clock):
    async with container(**{'answer 2': response(500)}) as (aws, credentials):
        aws.end = in_seconds(clock, 60 * 60)
        assert await credentials() == keys('KEY1')
        clock.now += 59 * 60 + 1
        found = await asyncio.gather(*(credentials() for _ in range(10)), return_exceptions=True)
        assert {str(each) for each in found} == {'the container: the endpoint answered 500'}
        aws.end = FAR
        assert await asyncio.gather(*(credentials() for _ in range(10))) == 10 * [keys('KEY3')]
        assert len(aws.asked) == 3


@on_loops
async def test_when_renewing_fails_those_that_are_good_are_used_on(container, clock, caplog):
    async with container(**{'answer 2': response(500), 'answer 3': response(503)},
                         ) as (aws, credentials):
        aws.end = in_seconds(clock, 60 * 60)
        await credentials()
        clock.now += 50 * 60
        assert [await credentials() for _ in range(10)] == 10 * [keys('KEY1')]
        assert [(each.name, each.levelno, each.getMessage()) for each in caplog.records
                if each.name.startswith('lowhaio_aws')] == [(
                    'lowhaio_aws_credentials', logging.WARNING,
                    'Renewing credentials failed, and those before are used on: the container: '
                    'the endpoint answered 500')]
        assert len(aws.asked) == 2
        clock.now += 61
        assert [await credentials() for _ in range(10)] == 10 * [keys('KEY1')]
        assert len(aws.asked) == 3
        clock.now += 61
        aws.end = FAR
        assert [await credentials() for _ in range(10)] == 10 * [keys('KEY4')]


@on_loops
async def test_who_renews_is_cancelled_and_those_that_are_good_are_used_on(container, clock):
    async with container() as (aws, credentials):
        aws.end = in_seconds(clock, 60 * 60)
        await credentials()
        clock.now += 50 * 60
        aws.may_answer.clear()
        task = asyncio.create_task(credentials())
        await until(lambda: len(aws.asked) == 2)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        clock.now += 59
        assert await credentials() == keys('KEY1')
        assert len(aws.asked) == 2
        clock.now += 2
        aws.end = FAR
        aws.may_answer.set()
        assert (await credentials())[0] in ('KEY2', 'KEY3')
        assert len(aws.asked) == 3


@on_loops
async def test_a_renewal_that_fails_too_late_is_an_error_for_those_who_came_meanwhile(
        container, clock):
    async with container(**{'answer 2': response(500)}) as (aws, credentials):
        aws.end = in_seconds(clock, 60 * 60)
        await credentials()
        clock.now += 58 * 60
        aws.may_answer.clear()
        tasks = [asyncio.create_task(credentials())]
        await until(lambda: len(aws.asked) == 2)
        clock.now += 2 * 60
        tasks.append(asyncio.create_task(credentials()))
        await turns(2)
        aws.may_answer.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(each) for each in found] == 2 * ['the container: the endpoint answered 500']


@pytest.mark.parametrize('left', [15 * 60, 90, 3])
@on_loops
async def test_those_that_do_not_last_are_renewed_when_a_third_is_left(container, clock, left):
    async with container() as (aws, credentials):
        aws.end = in_seconds(clock, left)
        await credentials()
        clock.now += left * .66
        assert await credentials() == keys('KEY1')
        clock.now += left * .01
        assert await credentials() == keys('KEY2')


@on_loops
async def test_credentials_that_have_ended_are_an_error(container, clock):
    async with container() as (aws, credentials):
        aws.end = in_seconds(clock, -1)
        error = await failure_of(credentials)
        assert str(error) == (
            f'the container: the credentials that came have ended at {aws.end[:19]}+00:00, or the '
            'clock of this machine is wrong')
        assert not error.is_lasting


@on_loops
async def test_those_that_are_forgotten_are_fetched_anew_once(container, clock):
    async with container() as (aws, credentials):
        credentials.forget()
        await credentials()
        clock.now += 11
        credentials.forget()
        assert repr(credentials) == '<Credentials of the container: not fetched>'
        for _ in range(100):
            # The requests that were under way with those before fail one after the other.
            assert await credentials() == keys('KEY2')
            credentials.forget()
        clock.now += 9
        credentials.forget()
        assert await credentials() == keys('KEY2')
        clock.now += 2
        credentials.forget()
        assert await credentials() == keys('KEY3')
        # A clock that was put back keeps none for longer.
        clock.now -= 100
        credentials.forget()
        assert await credentials() == keys('KEY4')


@on_loops
async def test_those_that_are_forgotten_do_not_come_back_when_renewing_fails(container, clock):
    async with container(**{'answer 2': response(500)}) as (aws, credentials):
        aws.end = in_seconds(clock, 60 * 60)
        await credentials()
        clock.now += 50 * 60
        aws.may_answer.clear()
        task = asyncio.create_task(credentials())
        await until(lambda: len(aws.asked) == 2)
        credentials.forget()
        aws.may_answer.set()
        assert str(await failure_of(lambda: task)) == 'the container: the endpoint answered 500'


@on_loops
async def test_requests_are_signed_with_them(container):
    async with container() as (aws, credentials):
        script = Answering(response(200))
        async with Server(script) as server, pool() as request:
            await get(signed(request, credentials, 's3', 'eu-west-2'), server.url)
        assert b'Credential=KEY1/' in value(script.heads[0], b'authorization')
        assert value(script.heads[0], b'x-amz-security-token') == b'token-of-KEY1'


@on_loops
async def test_a_bucket_forgets_those_that_s3_refuses(container, clock):
    def answer(head, body):
        if b'Credential=KEY1/' in head:
            return response(400, b'<Error><Code>ExpiredToken</Code><Message>m</Message></Error>')
        return response(200, b'content', b'etag: "x"')

    async with container() as (aws, credentials), Server(Answering(answer)) as server, \
            pool() as request:
        await credentials()
        clock.now += 11
        bucket = Bucket(request, 'bucket', credentials, 'eu-west-2', endpoint=server.origin)
        async with await bucket.get('key') as content:
            assert await content.read() == b'content'
        assert len(aws.asked) == 2


@pytest.mark.parametrize('spread', [pickle.dumps, copy.copy, copy.deepcopy])
def test_what_has_secrets_is_not_spread(setenv, spread):
    setenv(AWS_ACCESS_KEY_ID='A', AWS_SECRET_ACCESS_KEY='secret-of-A')
    credentials = from_environment()
    asyncio.run(credentials())
    with pytest.raises(TypeError, match='^Credentials can not be pickled or copied: make others '
                                        'where they are needed, with the same function$'):
        spread(credentials)


@on_loops
async def test_a_request_is_retried_if_its_credentials_may_be_there_the_next_time(
        container, setenv):
    script = Answering(response(200))
    async with container(**{'answer 1': response(500)}) as (aws, credentials), \
            Server(script) as server, pool() as request:
        request = retry(signed(request, credentials, 's3', 'eu-west-2'),
                        ((HttpConnectionError, (0, 0)),))
        assert (await get(request, server.url))[0] == b'200'
        assert len(aws.asked) == 2

    request = retry(signed(request, from_environment(), 's3', 'eu-west-2'),
                    ((HttpConnectionError, (0, 0)),), on_retry=unwanted)
    with pytest.raises(HttpConnectionError) as caught:
        await get(request, server.url)
    assert str(caught.value) == (
        'signing a request for s3 in eu-west-2 failed: CredentialsError: the environment: '
        'AWS_ACCESS_KEY_ID is not set')


def test_one_object_serves_one_loop_after_the_other(setenv):
    setenv(AWS_ACCESS_KEY_ID='A', AWS_SECRET_ACCESS_KEY='secret-of-A')
    credentials = from_environment()
    for _ in range(2):
        assert asyncio.run(credentials()) == keys('A', token=False)


# ----------------------------------------------------------------------- what botocore makes of it


# It keeps what it has read, which takes a good part of the time otherwise.
LOADER = botocore.loaders.create_loader()


def by_botocore(profile=None):
    """What botocore finds with the same files and variables. None if it raises, or finds none."""
    try:
        session = botocore.session.Session(profile=profile)
        session.register_component('data_loader', LOADER)
        found = session.get_credentials()
        frozen = found and found.get_frozen_credentials()
    except Exception:
        return None
    return frozen and (frozen.access_key, frozen.secret_key, (
        (b'x-amz-security-token', frozen.token.encode()),) if frozen.token else ())


async def check_as_botocore(aws, *all_credentials, profile=None):
    """Check that each finds what botocore does, or nothing, and asks the services for the same.

    Returns what is found.
    """
    aws.asked.clear()
    expected = await asyncio.to_thread(by_botocore, profile)
    asked = list(aws.asked)
    for credentials in all_credentials:
        aws.asked.clear()
        try:
            found = await credentials()
        except CredentialsError as error:
            assert not any(secret in str(error) for secret in SECRETS)
            found = None
        assert found == expected
        if found is not None:
            assert aws.asked == asked
    return expected


STATIC = '[default]\n' + as_in_file('A')
# The name, the variables, and the key that is found.
ENVIRONMENTS = {
    'keys': ({'AWS_ACCESS_KEY_ID': 'E', 'AWS_SECRET_ACCESS_KEY': 's3cret'}, 'E'),
    'a token': ({'AWS_ACCESS_KEY_ID': 'E', 'AWS_SECRET_ACCESS_KEY': 's3cret',
                 'AWS_SESSION_TOKEN': 't0ken'}, 'E'),
    'the older token': ({'AWS_ACCESS_KEY_ID': 'E', 'AWS_SECRET_ACCESS_KEY': 's3cret',
                         'AWS_SECURITY_TOKEN': 't0ken'}, 'E'),
    'both tokens': ({'AWS_ACCESS_KEY_ID': 'E', 'AWS_SECRET_ACCESS_KEY': 's3cret',
                     'AWS_SECURITY_TOKEN': 't0ken-1', 'AWS_SESSION_TOKEN': 't0ken-2'}, 'E'),
    'an empty token': ({'AWS_ACCESS_KEY_ID': 'E', 'AWS_SECRET_ACCESS_KEY': 's3cret',
                        'AWS_SESSION_TOKEN': ''}, 'E'),
    'an end': ({'AWS_ACCESS_KEY_ID': 'E', 'AWS_SECRET_ACCESS_KEY': 's3cret',
                'AWS_CREDENTIAL_EXPIRATION': FAR}, 'E'),
    'an end that has passed': ({'AWS_ACCESS_KEY_ID': 'E', 'AWS_SECRET_ACCESS_KEY': 's3cret',
                                'AWS_CREDENTIAL_EXPIRATION': '2001-01-01T00:00:00Z'}, None),
    'no secret': ({'AWS_ACCESS_KEY_ID': 'E'}, None),
    'an empty secret': ({'AWS_ACCESS_KEY_ID': 'E', 'AWS_SECRET_ACCESS_KEY': ''}, None),
    'no ID': ({'AWS_SECRET_ACCESS_KEY': 's3cret'}, 'A'),
    'an empty ID': ({'AWS_ACCESS_KEY_ID': '', 'AWS_SECRET_ACCESS_KEY': 's3cret'}, 'A'),
    'nothing': ({}, 'A'),
}


@on_one_loop
async def test_the_environment_is_read_as_botocore_does(files, monkeypatch):
    (files / 'config').write_text(STATIC)
    aws = Aws()
    async with Server(aws), pool() as request:
        for name, (variables, expected) in ENVIRONMENTS.items():
            with row(name), monkeypatch.context() as patch:
                for each in variables.items():
                    patch.setenv(*each)
                found = await check_as_botocore(aws, from_chain(request))
                assert (found and found[0]) == expected


OF_ROLE = f'role_arn = {ROLE}R\nsource_profile = base\n'
BASE = '[profile base]\n' + as_in_file('BASE')
PRINTED = json.dumps({'Version': 1, 'AccessKeyId': 'P', 'SecretAccessKey': 's3cret'})
PROCESS = f"credential_process = echo '{PRINTED}'\n"
SSO = ('sso_start_url = https://example.com\nsso_region = eu-west-2\nsso_account_id = 1\n'
       'sso_role_name = r\n')
# The name, ~/.aws/config, ~/.aws/credentials, and the key that is found for the profile `p`, or
# for the one that is taken without a name if there is no `p` in the files. TOKENS stands for a
# folder, and URL for that of the services.
FILES = {
    'no files': (None, None, None),
    'keys in config': (STATIC, None, 'A'),
    'keys in credentials': (None, STATIC, 'A'),
    'keys in both': (STATIC, '[default]\n' + as_in_file('B'), 'B'),
    'a token': (None, STATIC + 'aws_session_token = t0ken', 'A'),
    'both tokens': (None, STATIC + 'aws_session_token = t0ken\naws_security_token = t0ken-2', 'A'),
    'a profile': ('[profile p]\n' + as_in_file('P'), None, 'P'),
    'a quoted profile': ('[profile "p"]\n' + as_in_file('P'), None, 'P'),
    'spaces around a profile': ('[profile   p ]\n' + as_in_file('P'), None, 'P'),
    'a tab': ('[profile\tp]\n' + as_in_file('P'), None, 'P'),
    'a profile without its word': ('[p]\n' + as_in_file('P'), None, None),
    'a profile with that word in credentials': (None, '[profile p]\n' + as_in_file('P'), None),
    'a profile of two words': ('[profile p q]\n' + as_in_file('P'), None, None),
    'a profile without a space': ('[profilep]\n' + as_in_file('P'), None, None),
    'a quotation mark too few': ('[profile "p]\n' + as_in_file('P'), None, None),
    'other sections': (
        '[sso-session p]\nsso_region = x\n[services q]\nsts =\n  endpoint_url = x\n'
        '[profile p]\n' + as_in_file('P'), None, 'P'),
    'default with its word': ('[profile default]\n' + as_in_file('A'), None, 'A'),
    'default with its word, and without': (
        '[profile default]\n' + as_in_file('B') + STATIC, None, 'A'),
    'default without its word, and with': (
        STATIC + '[profile default]\n' + as_in_file('B'), None, 'B'),
    'a default for all sections': (None, '[DEFAULT]\n' + as_in_file('D') + '[p]\nx = y', 'D'),
    'capitals': (None, '[default]\nAWS_Access_Key_ID = A\nAWS_SECRET_ACCESS_KEY = s3cret', 'A'),
    'colons': (None, '[default]\naws_access_key_id: A\naws_secret_access_key: s3cret', 'A'),
    'spaces': (
        None, '[default]\n aws_access_key_id=  A  \n aws_secret_access_key=s3cret/=+ ', 'A'),
    'comments': (None, '# x\n[default]\n; y\n' + as_in_file('A') + '#aws_access_key_id = B', 'A'),
    'what looks like a comment': (
        None, '[default]\naws_access_key_id = A # x\naws_secret_access_key = s3cret;x', 'A # x'),
    'percent signs': (
        None, '[default]\naws_access_key_id = A\naws_secret_access_key = %s3cret%%(x)s', 'A'),
    'nested values': ('[default]\ns3 =\n  a = b\n  c = d\n' + as_in_file('A'), None, 'A'),
    'CRLF': (STATIC.replace('\n', '\r\n'), None, 'A'),
    'keys in two files': (
        '[default]\naws_access_key_id = A', '[default]\naws_secret_access_key = s3cret', None),
    'no secret': (None, '[default]\naws_access_key_id = A', None),
    'no ID': (None, '[default]\naws_secret_access_key = s3cret', None),
    'a section twice': (None, STATIC + STATIC, None),
    'a key twice': (None, STATIC + 'aws_access_key_id = B', None),
    'no section': ('a = b\n' + STATIC, None, None),
    'a byte order mark': ('\ufeff' + STATIC, None, None),
    'a key without a value': (None, '[default]\naws_access_key_id\naws_secret_access_key = s3cret',
                              None),
    'a secret in the next line': (
        None, '[default]\naws_access_key_id = A\naws_secret_access_key =\n  s3cret', None),
    'a broken file that is not needed': ('[default', STATIC, None),
    'a role': (f'[profile p]\n{OF_ROLE}{BASE}', None, 'R'),
    'a role with all that it may have': (
        f'[profile p]\n{OF_ROLE}external_id = x1\nrole_session_name = me\nduration_seconds = 901\n'
        f'{BASE}', None, 'R'),
    'a role in credentials': (None, f'[p]\n{OF_ROLE}[base]\n{as_in_file("B")}', 'R'),
    'a role beside keys': (f'[profile p]\n{as_in_file("P")}{OF_ROLE}{BASE}', None, 'R'),
    'a source with a token': (
        f'[profile p]\n{OF_ROLE}{BASE}aws_session_token = token-of-BASE\n', None, 'R'),
    'a role of a role': (
        f'[profile p]\n{OF_ROLE}[profile base]\nrole_arn = {ROLE}S\nsource_profile = last\n'
        f'[profile last]\n{as_in_file("LAST")}', None, 'R'),
    'keys of a source come before its role': (
        f'[profile p]\n{OF_ROLE}[profile base]\nrole_arn = {ROLE}S\nsource_profile = last\n'
        f'{as_in_file("BASE")}[profile last]\n{as_in_file("LAST")}', None, 'R'),
    'a profile that is its own source': (
        f'[profile p]\nrole_arn = {ROLE}R\nsource_profile = p\n{as_in_file("P")}', None, 'R'),
    'a profile that is its own source, without keys': (
        f'[profile p]\nrole_arn = {ROLE}R\nsource_profile = p\n', None, None),
    'a circle': (
        f'[profile p]\n{OF_ROLE}[profile base]\nrole_arn = {ROLE}S\nsource_profile = p\n', None,
        None),
    'a circle of three': (
        f'[profile p]\n{OF_ROLE}[profile base]\nrole_arn = {ROLE}S\nsource_profile = q\n'
        f'[profile q]\nrole_arn = {ROLE}S\nsource_profile = base\n', None, None),
    'a source that is not there': (f'[profile p]\n{OF_ROLE}', None, None),
    'a source without credentials': (f'[profile p]\n{OF_ROLE}[profile base]\nx = y', None, None),
    'a source with half of its keys': (
        f'[profile p]\n{OF_ROLE}[profile base]\naws_access_key_id = A', None, None),
    'a role without a source': (f'[profile p]\nrole_arn = {ROLE}R', None, None),
    'keys, and a role without a source': (
        f'[profile p]\nrole_arn = {ROLE}R\n{as_in_file("P")}', None, None),
    'a role with two sources': (
        f'[profile p]\n{OF_ROLE}credential_source = Environment\n{BASE}', None, None),
    'a source without a role': (
        f'[profile p]\nsource_profile = base\n{as_in_file("P")}{BASE}', None, 'P'),
    'a credential_source that is unknown': (
        f'[profile p]\nrole_arn = {ROLE}R\ncredential_source = environment', None, None),
    'a credential_source that has none': (
        f'[profile p]\nrole_arn = {ROLE}R\ncredential_source = Environment', None, None),
    'a role from the container': (
        f'[profile p]\nrole_arn = {ROLE}R\ncredential_source = EcsContainer', None, 'R'),
    'a web identity': (
        f'[profile p]\nrole_arn = {ROLE}W\nweb_identity_token_file = TOKENS/token', None, 'W'),
    'a web identity with a name': (
        f'[profile p]\nrole_arn = {ROLE}W\nweb_identity_token_file = TOKENS/token\n'
        'role_session_name = me', None, 'W'),
    'a web identity and a source': (
        f'[profile p]\n{OF_ROLE}web_identity_token_file = TOKENS/token\n{BASE}', None, 'R'),
    'a web identity and keys': (
        f'[profile p]\nrole_arn = {ROLE}W\nweb_identity_token_file = TOKENS/token\n'
        f'{as_in_file("P")}', None, 'W'),
    'a web identity as the source': (
        f'[profile p]\n{OF_ROLE}[profile base]\nrole_arn = {ROLE}W\n'
        'web_identity_token_file = TOKENS/token', None, 'R'),
    'a web identity without a role': (
        '[profile p]\nweb_identity_token_file = TOKENS/token', None, None),
    'a web identity without a token': (
        f'[profile p]\nrole_arn = {ROLE}W\nweb_identity_token_file = TOKENS/none', None, None),
    'a process': (f'[profile p]\n{PROCESS}', None, 'P'),
    'a process in credentials': (None, f'[p]\n{PROCESS}', 'P'),
    'a process before keys in config': (f'[profile p]\n{as_in_file("A")}{PROCESS}', None, 'P'),
    'keys in credentials before a process': (
        f'[profile p]\n{PROCESS}', f'[p]\n{as_in_file("A")}', 'A'),
    'a process as the source': (f'[profile p]\n{OF_ROLE}[profile base]\n{PROCESS}', None, 'R'),
    'a process of another version': (
        f'[profile p]\n{PROCESS}'.replace(': 1', ': 2'), None, None),
    'IAM Identity Center': (f'[profile p]\n{SSO}{as_in_file("P")}', None, None),
    'a part of IAM Identity Center': (
        f'[profile p]\nsso_start_url = x\n{as_in_file("P")}', None, 'P'),
    'an endpoint for all services': (
        f'[profile p]\nendpoint_url = URLother/\n{OF_ROLE}{BASE}', None, 'R'),
    'an endpoint for STS': (
        f'[profile p]\nendpoint_url = http://127.0.0.1:1/\nservices = s\n{OF_ROLE}'
        f'[services s]\ns3 =\n  endpoint_url = x\nsts =\n  endpoint_url = URLsts\n{BASE}', None,
        'R'),
    'services without STS': (
        f'[profile p]\nendpoint_url = URLother\nservices = s\n{OF_ROLE}'
        f'[services s]\ns3 =\n  endpoint_url = x\n{BASE}', None, 'R'),
}


def write_files(folder, server, config, credentials):
    for name, text in ('config', config), ('credentials', credentials):
        (folder / name).unlink(missing_ok=True)
        if text is not None:
            text = text.replace('TOKENS', str(folder)).replace('URL', server.url)
            (folder / name).write_bytes(text.encode())


@pytest.mark.parametrize('config, credentials, expected', FILES.values(), ids=FILES)
@on_one_loop
async def test_files_are_read_as_botocore_does(files, setenv, config, credentials, expected):
    (files / 'token').write_text('token-of-web\n')
    name = 'p' if re.search('profile.*p|p]', f'{config}{credentials}') else None
    aws = Aws()
    async with Server(aws) as server, pool() as request:
        setenv(AWS_PROFILE=name, AWS_DEFAULT_REGION='eu-west-2')
        if 'endpoint_url' not in str(config):
            setenv(AWS_ENDPOINT_URL_STS=server.url)
        if 'EcsContainer' in str(config):
            setenv(AWS_CONTAINER_CREDENTIALS_FULL_URI=server.url + 'CONTAINER')
        write_files(files, server, config, credentials)
        found = await check_as_botocore(
            aws, from_profile(request), from_profile(request, name), from_chain(request),
            from_chain(request, profile=name))
        assert (found and found[0]) == expected


def printing(text):
    """A `credential_process` that prints this."""
    return f"credential_process = printf %s '{text}'\n"


BY_BOTOCORE = '. This layer does not do that: use from_botocore(botocore.session.Session(…))'
NEEDS_SOURCE = ('a profile with a role_arn needs either a source_profile or a credential_source, '
                'got ')
NO_KEY = 'must be a str of printable ASCII that is not empty'
IN_REGION = 'region = eu-west-2\n'
AS_SOURCE = f"the role {ROLE}R: its source_profile 'base': "
NO_FILE = "FileNotFoundError: [Errno 2] No such file or directory: '/none'"
# What the profile `p` has, what is wrong with it, and whether the same would come again.
BAD_PROFILES = {
    'nothing': ('a = b', 'it has no credentials', True),
    'half of its keys': ('aws_access_key_id = A', 'it has an aws_access_key_id, but no '
                         'aws_secret_access_key', True),
    'an empty key': ('aws_access_key_id =\naws_secret_access_key = s3cret',
                     f'the access key ID {NO_KEY}', True),
    'two lines': ('aws_access_key_id = A\naws_secret_access_key =\n  s3cret',
                  f'the secret access key {NO_KEY}', True),
    'a token that is not ASCII': (as_in_file('A') + 'aws_session_token = t0ken\u20ac',
                                  f'the session token {NO_KEY}', True),
    'a code': (f'{OF_ROLE}mfa_serial = x', 'it has an mfa_serial, which needs a code'
               + BY_BOTOCORE, True),
    'a duration': (f'{OF_ROLE}duration_seconds = 1h', 'duration_seconds must be digits, got '
                   "'1h'", True),
    'no region': (OF_ROLE, f'the role {ROLE}R: the region of STS is not known: give one, or set '
                  'AWS_REGION', True),
    'a region': (f'{OF_ROLE}region = eu/west', f'the role {ROLE}R: a region must have letters, '
                 "digits and \"-\" only, got 'eu/west'", True),
    'no source': (f'role_arn = {ROLE}R', NEEDS_SOURCE + 'none', True),
    'two sources': (f'{OF_ROLE}credential_source = Environment', NEEDS_SOURCE + 'both', True),
    'a credential_source': (
        f'{IN_REGION}role_arn = {ROLE}R\ncredential_source = Ec2', f'the role {ROLE}R: its '
        "credential_source 'Ec2': it must be Environment, Ec2InstanceMetadata or EcsContainer",
        True),
    'the environment': (
        f'{IN_REGION}role_arn = {ROLE}R\ncredential_source = Environment', f'the role {ROLE}R: '
        "its credential_source 'Environment': AWS_ACCESS_KEY_ID is not set", True),
    'the instance': (
        f'{IN_REGION}role_arn = {ROLE}R\ncredential_source = Ec2InstanceMetadata',
        f"the role {ROLE}R: its credential_source 'Ec2InstanceMetadata': "
        'AWS_EC2_METADATA_DISABLED is true', True),
    'no such source': (IN_REGION + OF_ROLE, AS_SOURCE + 'there is no such profile', True),
    'an empty source': (f'{IN_REGION}{OF_ROLE}[profile base]\na = b',
                        AS_SOURCE + 'it has no credentials', True),
    'a circle': (
        f'{IN_REGION}{OF_ROLE}[profile base]\nrole_arn = {ROLE}S\nsource_profile = p',
        f"{AS_SOURCE}the role {ROLE}S: its source_profile 'p': the profiles lead in a circle: "
        'p → base → p', True),
    'a web identity without a role': ('web_identity_token_file = /none', 'it has a '
                                      'web_identity_token_file, but no role_arn', True),
    'a web identity without a file': (
        f'{IN_REGION}role_arn = {ROLE}W\nweb_identity_token_file = /none',
        f'the token file /none can not be read: {NO_FILE}', False),
    'IAM Identity Center': (SSO, f'it is for IAM Identity Center (sso_…){BY_BOTOCORE}', True),
    'aws login': ('login_session = x', f'it is for "aws login" (login_session){BY_BOTOCORE}',
                  True),
    'a quotation mark': ('credential_process = "', 'credential_process: the command can not be '
                         'split: No closing quotation', True),
    'no command': ('credential_process = /none', f'credential_process: {NO_FILE}', False),
    'a command that fails': ('credential_process = false', 'credential_process: the command ended '
                             'with status 1', False),
    'no JSON': (printing('s3cret'), 'credential_process: what came is no object of JSON, in 6 '
                'bytes', False),
    'a list': (printing('["s3cret"]'), 'credential_process: what came is no object of JSON, in 10 '
               'bytes', False),
    'nested too deeply': (f'credential_process = {sys.executable} -c "print(99999 * chr(91))"',
                          'credential_process: what came is no object of JSON, in 100000 bytes',
                          False),
    'another version': (printing('{"Version": "1"}'), 'credential_process: the command must tell '
                        '"Version": 1', True),
    'no ID': (printing('{"Version": 1}'), 'credential_process: what came has no AccessKeyId',
              False),
    'no secret': (printing('{"Version": 1, "AccessKeyId": "A"}'),
                  'credential_process: what came has no SecretAccessKey', False),
    'an end that is none': (
        printing(PRINTED.replace('}', ', "Expiration": "soon"}')),
        "credential_process: 'soon' is no time at which credentials end", True),
    'an end that is a number': (
        printing(PRINTED.replace('}', ', "Expiration": 1}')),
        "credential_process: '1' is no time at which credentials end", True),
    'a token that is a number': (
        printing(PRINTED.replace('}', ', "SessionToken": 1}')),
        f'credential_process: the session token {NO_KEY}', True),
    'a line without a value': ('aws_secret_access_key', 'PATH can not be understood: ParsingError '
                               'in line 2', True),
    'a key twice': ('a = b\na = s3cret', 'PATH can not be understood: DuplicateOptionError in '
                    'line 3', True),
    'a section twice': ('[profile p]', 'PATH can not be understood: DuplicateSectionError in '
                        'line 2', True),
    'another encoding': ('a = \udcff', 'PATH must be UTF-8', True),
}


@pytest.mark.parametrize('text, message, is_lasting', BAD_PROFILES.values(), ids=BAD_PROFILES)
@on_one_loop
async def test_errors_of_profiles_tell_what_is_wrong(files, text, message, is_lasting):
    path = files / 'config'
    path.write_text(f'[profile p]\n{text}', errors='surrogateescape')
    async with pool() as request:
        error = await failure_of(from_profile(request, 'p'))
        assert str(error) == f"the profile 'p': {message.replace('PATH', str(path))}"
        assert error.is_lasting == is_lasting
        assert type(error.__cause__) is (FileNotFoundError if NO_FILE in message else type(None))


@on_one_loop
async def test_errors_of_files_tell_what_is_wrong(files, setenv):
    path = files / 'config'
    async with pool() as request:
        no_profile = ("there is no profile 'p' in the files of AWS_CONFIG_FILE and "
                      'AWS_SHARED_CREDENTIALS_FILE, or ~/.aws/config and ~/.aws/credentials')
        assert str(await failure_of(from_profile(request))) == (
            "the profile: no profile is named, and there is none with the name 'default'")
        assert str(await failure_of(from_profile(request, 'p'))) == (
            f"the profile 'p': {no_profile}")
        setenv(AWS_PROFILE='p')
        assert str(await failure_of(from_profile(request))) == f'the profile: {no_profile}'
        path.write_text('[profile p]')
        assert str(await failure_of(from_profile(request))) == (
            "the profile: 'p': it has no credentials")
        path.write_text('aws_secret_access_key = s3cret')
        assert str(await failure_of(from_profile(request))) == (
            f'the profile: {path} can not be understood: MissingSectionHeaderError in line 1')
        path.unlink()
        path.mkdir()
        error = await failure_of(from_profile(request))
        assert str(error) == (f'the profile: {path} can not be read: IsADirectoryError: '
                              f"[Errno 21] Is a directory: '{path}'")
        assert type(error.__cause__) is IsADirectoryError
        assert error.is_lasting


@on_loops
async def test_files_are_where_the_variables_say_or_in_the_home_directory(files, setenv):
    (files / '.aws').mkdir()
    (files / '.aws' / 'config').write_text('[profile p]\n' + as_in_file('P'))
    (files / '.aws' / 'credentials').write_text(STATIC)
    setenv(AWS_CONFIG_FILE=None, AWS_SHARED_CREDENTIALS_FILE='')
    async with pool() as request:
        assert await from_profile(request)() == keys('A', token=False)
        assert await from_profile(request, 'p')() == keys('P', token=False)
        setenv(AWS_CONFIG_FILE='~/other', AWS_SHARED_CREDENTIALS_FILE='$HOME/another')
        (files / 'other').write_text('[profile p]\n' + as_in_file('P2'))
        (files / 'another').write_text('[default]\n' + as_in_file('A2'))
        assert await from_profile(request)() == keys('A2', token=False)
        assert await from_profile(request, 'p')() == keys('P2', token=False)


@on_loops
async def test_files_are_read_anew_when_credentials_are_forgotten(files, clock):
    async with pool() as request:
        credentials = from_profile(request)
        (files / 'credentials').write_text(STATIC)
        assert await credentials() == keys('A', token=False)
        (files / 'credentials').write_text('[default]\n' + as_in_file('B'))
        clock.now += 10 ** 9
        assert await credentials() == keys('A', token=False)
        assert repr(credentials) == '<Credentials of the profile: fetched>'
        credentials.forget()
        assert await credentials() == keys('B', token=False)


def test_the_region_of_a_profile(files, setenv):
    setenv(AWS_REGION='of-no-profile')
    assert region_of_profile() is None
    (files / 'config').write_text(
        '[default]\nregion = eu-west-2\n[profile p]\nregion = cn-north-1')
    (files / 'credentials').write_text('[q]\na = b')
    for name, region in (None, 'eu-west-2'), ('p', 'cn-north-1'), ('q', None):
        setenv(AWS_PROFILE=name)
        assert region_of_profile() == region_of_profile(name) == region
    with pytest.raises(CredentialsError, match="^there is no profile 'r' in the files of "):
        region_of_profile('r')


# The profile, if it is given or the one of the variables, and the one that is taken.
@pytest.mark.parametrize('given, variables, expected', [
    (None, {'AWS_PROFILE': 'p'}, 'P'),
    (None, {'AWS_DEFAULT_PROFILE': 'p'}, 'P'),
    (None, {'AWS_DEFAULT_PROFILE': 'p', 'AWS_PROFILE': 'q'}, 'P'),
    ('q', {'AWS_PROFILE': 'p'}, 'Q'),
    (None, {'AWS_PROFILE': ''}, None),
])
@on_one_loop
async def test_the_name_of_the_profile_is_found_as_botocore_does(
        files, setenv, given, variables, expected):
    (files / 'credentials').write_text(
        f'{STATIC}[p]\n{as_in_file("P")}[q]\n{as_in_file("Q")}')
    setenv(**variables)
    async with pool() as request:
        found = await check_as_botocore(Aws(), from_profile(request, given), profile=given)
        assert (found and found[0]) == expected


# --------------------------------------------------------------------------- the rest of the chain


OF_WEB = {'AWS_WEB_IDENTITY_TOKEN_FILE': 'TOKENS/token', 'AWS_ROLE_ARN': ROLE + 'W'}
OF_ENVIRONMENT = {'AWS_ACCESS_KEY_ID': 'E', 'AWS_SECRET_ACCESS_KEY': 's3cret'}
OF_CONTAINER = {'AWS_CONTAINER_CREDENTIALS_FULL_URI': 'URLcontainer/C?a=b'}
OF_INSTANCE = {'AWS_EC2_METADATA_DISABLED': 'false'}
ROLE_OF_DEFAULT = f'[default]\n{OF_ROLE}{BASE}'
# What is there, the name that is given, and the key that is found.
CHAINS = {
    'all, with keys': ((OF_ENVIRONMENT, OF_WEB, OF_CONTAINER, OF_INSTANCE), STATIC, None, 'E'),
    'all, with a role': (
        (OF_ENVIRONMENT, OF_WEB, OF_CONTAINER, OF_INSTANCE), ROLE_OF_DEFAULT, None, 'E'),
    'no environment': ((OF_WEB, OF_CONTAINER, OF_INSTANCE), ROLE_OF_DEFAULT, None, 'R'),
    'no environment, with keys': ((OF_WEB, OF_CONTAINER, OF_INSTANCE), STATIC, None, 'W'),
    'no web identity': ((OF_CONTAINER, OF_INSTANCE), STATIC, None, 'A'),
    'no profile': ((OF_CONTAINER, OF_INSTANCE), '', None, 'C'),
    'no container': ((OF_INSTANCE,), '', None, 'my-role'),
    'nothing': ((), '', None, None),
    'a profile is given': ((OF_ENVIRONMENT, OF_WEB, OF_CONTAINER), STATIC, 'default', 'A'),
    'a profile that is not there is given': ((OF_ENVIRONMENT, OF_CONTAINER), STATIC, 'x', None),
    'half of the environment': (({'AWS_ACCESS_KEY_ID': 'E'}, OF_CONTAINER), STATIC, None, None),
    'half of the web identity': (
        ({'AWS_WEB_IDENTITY_TOKEN_FILE': 'TOKENS/token'}, OF_CONTAINER), STATIC, None, None),
    'the other half': (({'AWS_ROLE_ARN': 'x'},), STATIC, None, 'A'),
    'no token': (({**OF_WEB, 'AWS_WEB_IDENTITY_TOKEN_FILE': 'TOKENS/none'},), STATIC, None, None),
    'a session': (({**OF_WEB, 'AWS_ROLE_SESSION_NAME': 'me'},), '', None, 'W'),
    'a role that has nothing to be assumed with': (
        (OF_CONTAINER,), f'[default]\nrole_arn = {ROLE}R\ncredential_source = Environment', None,
        None),
    'a profile without keys': ((OF_CONTAINER,), '[default]\nregion = x', None, 'C'),
}


@pytest.mark.parametrize('variables, config, profile, expected', CHAINS.values(), ids=CHAINS)
@on_one_loop
async def test_the_chain_has_the_order_of_botocore(
        files, setenv, variables, config, profile, expected):
    (files / 'token').write_text('token-of-web\n')
    (files / 'config').write_text(config)
    aws = Aws()
    async with Server(aws) as server, pool() as request:
        setenv(AWS_DEFAULT_REGION='eu-west-2', AWS_ENDPOINT_URL_STS=server.url,
               AWS_EC2_METADATA_SERVICE_ENDPOINT=server.url)
        for each in variables:
            setenv(**{name: text.replace('TOKENS', str(files)).replace('URL', server.url)
                      for name, text in each.items()})
        found = await check_as_botocore(
            aws, from_chain(request, profile=profile), profile=profile)
        assert (found and found[0]) == expected


@on_loops
async def test_the_error_of_the_chain_tells_what_each_source_said(files, setenv):
    async with pool() as request:
        error = await failure_of(from_chain(request))
        assert str(error) == (
            'the chain: the environment: AWS_ACCESS_KEY_ID is not set; the profile: no profile is '
            "named, and there is none with the name 'default'; web identity: "
            'AWS_WEB_IDENTITY_TOKEN_FILE is not set; the container: neither '
            'AWS_CONTAINER_CREDENTIALS_RELATIVE_URI nor AWS_CONTAINER_CREDENTIALS_FULL_URI is '
            'set; the instance: AWS_EC2_METADATA_DISABLED is true')
        assert error.is_lasting
        assert error.__cause__ is None

        # The ones behind one that fails could be of somebody else.
        (files / 'config').write_text('[default]\nregion = eu-west-2')
        setenv(AWS_CONTAINER_CREDENTIALS_FULL_URI='http://127.0.0.1:1/', **OF_INSTANCE)
        error = await failure_of(from_chain(request, profile='default'))
        assert str(error) == (
            "the chain: the profile 'default': it has no role to be assumed; "
            "the profile 'default': it has no credentials; the container: HttpConnectionError: "
            f'{error.__cause__}')
        assert type(error.__cause__) is HttpConnectionError
        assert not error.is_lasting


@on_loops
async def test_the_source_that_was_found_stays_the_one(files, setenv, clock):
    async with pool() as request:
        credentials = from_chain(request)
        (files / 'credentials').write_text(STATIC)
        assert await credentials() == keys('A', token=False)
        setenv(**OF_ENVIRONMENT)
        clock.now += 11
        credentials.forget()
        assert await credentials() == keys('A', token=False)
        clock.now += 11
        credentials.forget()
        (files / 'credentials').unlink()
        assert str(await failure_of(credentials)) == (
            "the chain: the profile: no profile is named, and there is none with the name "
            "'default'")


@on_loops
async def test_the_environment_is_read_again_when_they_end(setenv, clock):
    setenv(**OF_ENVIRONMENT, AWS_CREDENTIAL_EXPIRATION=in_seconds(clock, 3600))
    credentials = from_environment()
    assert (await credentials())[0] == 'E'
    setenv(AWS_ACCESS_KEY_ID='F')
    assert (await credentials())[0] == 'E'
    clock.now += 3590
    error = await failure_of(lambda: change_end(setenv, 'never', credentials))
    assert str(error) == (
        "the environment: 'never' is no time at which credentials end")
    setenv(AWS_CREDENTIAL_EXPIRATION=in_seconds(clock, 3600)[:19])  # of UTC
    assert (await credentials())[0] == 'F'


async def change_end(setenv, end, credentials):
    setenv(AWS_CREDENTIAL_EXPIRATION=end)
    return await credentials()


# -------------------------------------------------------------------------------------- containers


# The URL, and whether credentials may come from there.
CONTAINER_URLS = {
    'http://127.0.0.1:PORT/a?b=c': True,
    'http://127.0.0.2:PORT': True,
    'HTTP://LOCALHOST:PORT/': True,
    'http://[::1]:PORT/': True,
    'http://169.254.170.2/': True,
    'http://169.254.170.23/v1/credentials': True,
    'http://[fd00:ec2::23]/v1/credentials': True,
    'https://aws.example.com/a': True,
    'http://aws.example.com/a': False,
    'http://169.254.169.254/': False,
    'http://10.0.0.1/': False,
    'http://0.0.0.0/': False,
    'http://2130706433/': False,
    'http://127.0.0.1.example.com/': False,
    'http://localhost.example.com/': False,
    'http://[fd00:ec2::254]/': False,
}


@pytest.mark.parametrize('url, is_allowed', CONTAINER_URLS.items())
@on_one_loop
async def test_only_what_is_near_is_asked_without_tls(setenv, url, is_allowed):
    hosts = []

    async def get_connection(scheme, host, port):
        hosts.append(f'{scheme}://{host}'.lower())
        raise OSError('no network')

    async with pool(get_connection=get_connection) as request:
        setenv(AWS_CONTAINER_CREDENTIALS_FULL_URI=url.replace('PORT', '1'))
        error = await failure_of(from_container(request))
        if is_allowed:
            assert 'no network' in str(error)
            assert hosts == [re.sub(r'(://[^/]*?)(:PORT)?(/.*)?$', r'\1', url).lower()
                             .replace('[', '').replace(']', '')]
            assert not error.is_lasting
        else:
            assert str(error) == (
                'the container: AWS_CONTAINER_CREDENTIALS_FULL_URI must be https:, or have a '
                'loopback address or one of 169.254.170.2, 169.254.170.23, fd00:ec2::23, but its '
                f'host is {url.split("/")[2].strip("[]")!r}')
            assert error.is_lasting
            assert hosts == []


@pytest.mark.parametrize('url', [
    'ftp://localhost/', 'http:/localhost', 'localhost', 'http://user@127.0.0.1/', 'http://',
    'http://127.0.0.1:x/', 'http://127.0.0.1\\@example.com/', 'http://127.0.0.1/ a', '/v2/a'])
@on_one_loop
async def test_what_is_no_url_is_refused(setenv, url):
    async with pool() as request:
        setenv(AWS_CONTAINER_CREDENTIALS_FULL_URI=url)
        error = await failure_of(from_container(request))
        assert str(error) == ('the container: AWS_CONTAINER_CREDENTIALS_FULL_URI must be a URL of '
                              'http: or https:')
        assert error.is_lasting


@on_loops
async def test_ecs_is_asked_at_its_address(setenv):
    aws = Aws()

    async with Server(aws) as server, pool(
            get_connection=connecting_to(http=server.port)) as request:
        # The other one would be refused.
        setenv(AWS_CONTAINER_CREDENTIALS_RELATIVE_URI='/v2/credentials/ECS',
               AWS_CONTAINER_CREDENTIALS_FULL_URI='http://example.com/')
        assert await from_container(request)() == keys('ECS')
        assert aws.asked == ['/v2/credentials/ECS']
        assert value(aws.bodies[0][0], b'host') == b'169.254.170.2'
        setenv(AWS_CONTAINER_CREDENTIALS_RELATIVE_URI='@example.com/')
        assert str(await failure_of(from_container(request))) == (
            'the container: AWS_CONTAINER_CREDENTIALS_RELATIVE_URI must begin with "/"')


@on_loops
async def test_the_authorization_token_is_read_at_each_fetch(files, setenv, clock):
    aws = Aws()
    async with Server(aws) as server, pool() as request:
        credentials = from_container(request)

        async def sent():
            clock.now += 11
            credentials.forget()
            assert await credentials() == keys('C')
            return value(aws.bodies[-1][0], b'authorization')

        setenv(AWS_CONTAINER_CREDENTIALS_FULL_URI=server.url + 'C')
        assert await sent() is None
        setenv(AWS_CONTAINER_AUTHORIZATION_TOKEN='Basic t0ken')
        assert await sent() == b'Basic t0ken'
        setenv(AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=str(files / 'token'))
        for token in 't0ken-1', 't0ken-2\n':
            (files / 'token').write_text(token)
            assert await sent() == token.strip().encode()
        assert value(aws.bodies[-1][0], b'accept') == b'application/json'


# What is in the file, the error, its cause, and whether the same would come again.
@pytest.mark.parametrize('content, message, cause, is_lasting', [
    (None, 'can not be read: FileNotFoundError: [Errno 2] No such file or directory: {path!r}',
     FileNotFoundError, False),
    (b' \n', 'is empty', type(None), False),
    (b't0ken\xff', 'must be ASCII', type(None), True),
    (b't0ken\nt0ken', None, type(None), True),
    (b't0ken\r\na: b', None, type(None), True),
])
@on_one_loop
async def test_an_authorization_token_that_can_not_be_sent(
        files, setenv, content, message, cause, is_lasting):
    path = str(files / 'token')
    if content is not None:
        (files / 'token').write_bytes(content)
    setenv(AWS_CONTAINER_CREDENTIALS_FULL_URI='http://127.0.0.1:1/',
           AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=path)
    async with pool() as request:
        error = await failure_of(from_container(request))
    assert str(error) == 'the container: ' + (
        'the authorization token must be printable ASCII in one line' if message is None else
        f'AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE {path} {message.format(path=path)}')
    assert (type(error.__cause__), error.is_lasting) == (cause, is_lasting)


# What the endpoint answers, the error, and whether the same would come again.
CONTAINER_ANSWERS = {
    'a redirect': (response(302, b'', b'location: /credentials/C'), 'the endpoint answered 302',
                   False),
    'refused': (response(403, b'{"code": "AccessDenied", "message": "No association"}'),
                "the endpoint answered 403: 'AccessDenied', 'No association'", True),
    'not found': (response(404, b'<html>'), 'the endpoint answered 404', True),
    'odd': (response(400, b'{"code": 1, "message": ["s3cret"]}'), 'the endpoint answered 400',
            True),
    'long': (response(400, b'{"code": "%b"}' % (b'x' * 1000)), 'the endpoint answered 400: '
             f"'{'x' * 300}'", True),
    'too many': (response(429), 'the endpoint answered 429', False),
    'a failure': (response(500), 'the endpoint answered 500', False),
    'no JSON': (response(200, b's3cret'), 'what came is no object of JSON, in 6 bytes', False),
    'no UTF-8': (response(200, b'"\xff'), 'what came is no object of JSON, in 2 bytes', False),
    'no ID': (response(200, b'{}'), 'what came has no AccessKeyId', False),
    'an empty secret': (response(200, b'{"AccessKeyId": "A", "SecretAccessKey": ""}'),
                        'what came has no SecretAccessKey', False),
    'an ID of two lines': (response(200, as_json('A\nB')), f'the access key ID {NO_KEY}', True),
    'an end': (response(200, as_json('A', 'soon')), "'soon' is no time at which credentials end",
               True),
    'as much as is read': (response(200, b' ' * 65536),
                           'what came is no object of JSON, in 65536 bytes', False),
    'too much': (response(200, as_json('A') + b' ' * 65536), 'an answer has more than 65536 '
                 'bytes', False),
}


@pytest.mark.parametrize('sent, message, is_lasting', CONTAINER_ANSWERS.values(),
                         ids=CONTAINER_ANSWERS)
@on_one_loop
async def test_what_a_container_may_answer(setenv, sent, message, is_lasting):
    script = Answering(sent)
    async with Server(script) as server, pool() as request:
        setenv(AWS_CONTAINER_CREDENTIALS_FULL_URI=server.url)
        error = await failure_of(from_container(request))
        assert str(error) == f'the container: {message}'
        assert (error.is_lasting, error.__cause__) == (is_lasting, None)
        assert len(script.heads) == 1


@on_clock
async def test_a_container_that_does_not_answer(setenv):
    async with Server(holding(b'')) as server, pool() as request:
        setenv(AWS_CONTAINER_CREDENTIALS_FULL_URI=server.url)
        seconds, task = await measured(failure_of(from_container(request)))
    assert seconds == 2
    assert type(task.result().__cause__) is HttpDataError
    assert type(task.result().__cause__.__cause__) is TimeoutError


@on_one_loop
async def test_a_request_that_is_refused_would_be_so_again(setenv):
    setenv(AWS_CONTAINER_CREDENTIALS_FULL_URI='http://127.0.0.1:99999/')
    async with pool() as request:
        error = await failure_of(from_container(request))
    assert error.is_lasting
    assert type(error.__cause__) is HttpConnectionError


# --------------------------------------------------------------------------------------- instances


@pytest.fixture
def instance(setenv):
    """Their services, and credentials, while a test runs."""
    @contextlib.asynccontextmanager
    async def instance(**changed):
        aws = Aws(**{path.replace(' ', '/'): each for path, each in changed.items()})
        async with Server(aws) as server, pool() as request:
            setenv(AWS_EC2_METADATA_SERVICE_ENDPOINT=server.url,
                   AWS_EC2_METADATA_DISABLED='false')
            yield aws, from_instance(request)

    return instance


TOKEN = '/latest/api/token'
IMDS = '/latest/meta-data/iam/security-credentials/'


@on_loops
async def test_an_instance_is_asked_with_a_token(instance, clock):
    async with instance() as (aws, credentials):
        aws.end = in_seconds(clock, 6 * 60 * 60)
        assert await credentials() == keys('my-role')
        assert aws.asked == [TOKEN, IMDS, IMDS + 'my-role']
        head = aws.bodies[0][0]
        assert head.startswith(b'PUT ')
        assert value(head, b'x-aws-ec2-metadata-token-ttl-seconds') == b'21600'
        assert value(head, b'content-length') == b'0'
        for head, _ in aws.bodies[1:]:
            assert value(head, b'x-aws-ec2-metadata-token') == b'token-of-imds'

        # The token is used on while it is good.
        clock.now += 6 * 60 * 60 - 10 * 60
        aws.end = in_seconds(clock, 6 * 60 * 60)
        aws.asked.clear()
        await credentials()
        assert aws.asked == [IMDS, IMDS + 'my-role']
        clock.now += 6 * 60 * 60 - 10 * 60
        aws.asked.clear()
        aws.end = FAR
        await credentials()
        assert aws.asked == [TOKEN, IMDS, IMDS + 'my-role']


@on_loops
async def test_a_token_that_is_not_known_any_more_is_replaced_once(instance, clock):
    def answer(head):
        return response(200, b'my-role') if value(
            head, b'x-aws-ec2-metadata-token') == good else response(401)

    good = b'token-of-imds'
    async with instance() as (aws, credentials):
        aws.changed[IMDS] = answer
        assert await credentials() == keys('my-role')
        clock.now += 11
        good = b'another-token'
        aws.changed[TOKEN] = response(200, b'another-token')
        credentials.forget()
        aws.asked.clear()
        assert await credentials() == keys('my-role')
        assert aws.asked == [IMDS, TOKEN, IMDS, IMDS + 'my-role']
        clock.now += 11
        good = b'none'
        credentials.forget()
        aws.asked.clear()
        error = await failure_of(credentials)
        assert str(error) == 'the instance: the metadata service answered 401'
        assert aws.asked == [IMDS, TOKEN, IMDS]


# What is answered at which path, the error, and whether the same would come again.
INSTANCE_ANSWERS = {
    'IMDS is off': (TOKEN, response(403), 'the metadata service, asked for a token, answered 403',
                    True),
    'only IMDSv1': (TOKEN, response(404), 'the metadata service, asked for a token, answered 404',
                    True),
    'a failure': (TOKEN, response(503), 'the metadata service, asked for a token, answered 503',
                  False),
    'an empty token': (TOKEN, response(200), 'the metadata service gave a token that can not be '
                       'sent', False),
    'a token of two lines': (TOKEN, response(200, b't0ken\r\na: b'),
                             'the metadata service gave a token that can not be sent', False),
    'no role': (IMDS, response(404), 'the metadata service answered 404: the instance has no role',
                True),
    'an empty role': (IMDS, response(200), 'the metadata service tells no name of a role', False),
    'two roles': (IMDS, response(200, b'a\nb'), 'the metadata service tells no name of a role',
                  False),
    'a redirect': (IMDS, response(301, b'', b'location: /'), 'the metadata service answered 301',
                   False),
    'another role': (IMDS + 'my-role', response(404), 'the metadata service answered 404', True),
    'no credentials yet': (
        IMDS + 'my-role', response(200, b'{"Code": "AssumeRoleUnauthorizedAccess", '
                                        b'"Message": "EC2 cannot assume the role"}'),
        "the metadata service answered 200: 'AssumeRoleUnauthorizedAccess', 'EC2 cannot assume "
        "the role'", False),
    'a code that is none': (IMDS + 'my-role', response(200, b'{"Code": 1}'),
                            'the metadata service answered 200', False),
    'no JSON': (IMDS + 'my-role', response(200, b's3cret'),
                'what came is no object of JSON, in 6 bytes', False),
}


@pytest.mark.parametrize('path, sent, message, is_lasting', INSTANCE_ANSWERS.values(),
                         ids=INSTANCE_ANSWERS)
@on_one_loop
async def test_what_an_instance_may_answer(instance, path, sent, message, is_lasting):
    async with instance(**{path: sent}) as (aws, credentials):
        error = await failure_of(credentials)
        assert str(error) == f'the instance: {message}'
        assert (error.is_lasting, error.__cause__) == (is_lasting, None)
        # There is no going back to IMDSv1.
        assert all(value(head, b'x-aws-ec2-metadata-token') for head, _ in aws.bodies[1:])


@on_loops
async def test_a_role_may_have_any_name(instance):
    async with instance(**{IMDS: response(200, b'a b=c,@\n')}) as (aws, credentials):
        await credentials()
        assert aws.asked[-1] == IMDS + 'a%20b%3Dc%2C%40'


@on_loops
async def test_credentials_of_an_instance_that_have_ended_are_used_on(instance, clock, caplog):
    async with instance() as (aws, credentials):
        aws.end = in_seconds(clock, -3600)
        assert await credentials() == keys('my-role')
        assert [each.getMessage() for each in caplog.records
                if each.name == 'lowhaio_aws_credentials'] == [
            f'The credentials of the instance have ended at {aws.end[:19]}+00:00, and there are '
            'no newer ones. They are used on.']
        aws.asked.clear()
        clock.now += 5 * 60 - 1
        await credentials()
        assert aws.asked == []
        clock.now += 5 * 60 + 2
        aws.end = FAR
        assert await credentials() == keys('my-role')
        assert aws.asked == [IMDS, IMDS + 'my-role']
        assert repr(credentials) == (
            '<Credentials of the instance: good until 2099-01-01T00:00:00+00:00>')


@on_one_loop
async def test_botocore_uses_them_on_too(instance):
    async with instance() as (aws, credentials):
        aws.end = '2001-01-01T00:00:00Z'
        assert await check_as_botocore(aws, credentials) == keys('my-role')


# The variables, and the origin that is asked.
@pytest.mark.parametrize('variables, given, origin', [
    ({}, None, 'http://169.254.169.254:80'),
    ({'MODE': 'ipv4'}, None, 'http://169.254.169.254:80'),
    ({'MODE': 'IPv6'}, None, 'http://[fd00:ec2::254]:80'),
    ({'MODE': ''}, 'http://127.0.0.3/', 'http://127.0.0.3:80'),
    ({'': 'http://127.0.0.4'}, None, 'http://127.0.0.4:80'),
    ({'': 'http://127.0.0.4', 'MODE': 'IPv6'}, 'http://127.0.0.3', 'http://127.0.0.3:80'),
])
@on_one_loop
async def test_where_an_instance_is_asked(setenv, variables, given, origin):
    async def get_connection(scheme, host, port):
        raise OSError('no network')

    setenv(**{'_'.join(filter(None, ('AWS_EC2_METADATA_SERVICE_ENDPOINT', name))): text
              for name, text in variables.items()}, AWS_EC2_METADATA_DISABLED=None)
    async with pool(get_connection=get_connection) as request:
        error = await failure_of(from_instance(request, endpoint=given))
        assert str(error).startswith(f'the instance: HttpConnectionError: PUT {origin}')


@pytest.mark.parametrize('variables, message', [
    ({'AWS_EC2_METADATA_DISABLED': 'True'}, 'AWS_EC2_METADATA_DISABLED is true'),
    ({'AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE': 'IPv5'},
     "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE must be IPv4 or IPv6, got 'IPv5'"),
    *(({'AWS_METADATA_SERVICE_TIMEOUT': text},
       f'AWS_METADATA_SERVICE_TIMEOUT must be a number of seconds, got {text!r}')
      for text in ('0', '0.0', '-1', '1e3', 'inf', '1s', '\u0661')),
])
@on_one_loop
async def test_variables_of_an_instance_that_make_no_sense(setenv, variables, message):
    setenv(AWS_EC2_METADATA_DISABLED='no')
    setenv(**variables)
    async with pool() as request:
        error = await failure_of(from_instance(request))
        assert str(error) == f'the instance: {message}'
        assert error.is_lasting


@pytest.mark.parametrize('variable, seconds', [(None, 1), ('', 1), ('2.5', 2.5)])
@on_clock
async def test_an_instance_that_does_not_answer(setenv, variable, seconds):
    async with Server(holding(b'')) as server, pool() as request:
        setenv(AWS_METADATA_SERVICE_TIMEOUT=variable, AWS_EC2_METADATA_DISABLED=None)
        passed, task = await measured(failure_of(from_instance(request, endpoint=server.origin)))
    error = task.result()
    assert passed == seconds
    assert type(error.__cause__) is HttpDataError
    assert str(error) == (
        f'the instance: HttpDataError: {error.__cause__} (in a container, the metadata service '
        'can answer only if the hop limit of the instance is 2 or more)')
    assert not error.is_lasting


@on_clock
async def test_a_metadata_service_that_is_not_there(setenv):
    async def get_connection(scheme, host, port):
        await forever()

    setenv(AWS_EC2_METADATA_DISABLED=None)
    async with pool(get_connection=get_connection) as request:
        passed, task = await measured(failure_of(from_instance(request)))
    assert passed == 1
    assert str(task.result()) == (
        f'the instance: HttpConnectionError: {task.result().__cause__}')


@on_loops
async def test_a_metadata_service_that_hangs_up(setenv):
    setenv(AWS_EC2_METADATA_DISABLED=None)
    async with Server(Answering(None)) as server, pool() as request:
        error = await failure_of(from_instance(request, endpoint=server.origin))
    assert str(error) == f'the instance: HttpConnectionClosedError: {error.__cause__}'


# --------------------------------------------------------------------------------------------- STS


@pytest.fixture
def sts(setenv):
    """Their services and a request, while a test runs."""
    @contextlib.asynccontextmanager
    async def sts(**changed):
        aws = Aws(**changed)
        async with Server(aws) as server, pool() as request:
            setenv(AWS_ENDPOINT_URL_STS=server.origin, AWS_REGION='eu-west-2')
            yield aws, request

    return sts


class Static:
    """Credentials that note when they are forgotten, and are others then."""

    def __init__(self):
        self.forgotten = 0

    async def __call__(self):
        return keys(f'BASE{self.forgotten}')

    def forget(self):
        self.forgotten += 1


async def without_forget():
    return keys('BASE')


@on_loops
async def test_a_role_is_assumed(sts):
    async with sts() as (aws, request):
        assert await assumed_role(request, without_forget, ROLE + 'R')() == keys('R')
        assert await assumed_role(
            request, without_forget, ROLE + 'path/R+=@', session_name='me & you',
            external_id='a=b', duration=900, region='eu-west-1')() == keys('R+=@')
    assert aws.asked == [
        {'Action': 'AssumeRole', 'RoleArn': ROLE + 'R', 'as': b'BASE', 'in': b'eu-west-2',
         'token': b'token-of-BASE'},
        {'Action': 'AssumeRole', 'RoleArn': ROLE + 'path/R+=@', 'RoleSessionName': 'me & you',
         'ExternalId': 'a=b', 'DurationSeconds': '900', 'as': b'BASE', 'in': b'eu-west-1',
         'token': b'token-of-BASE'}]
    head, _ = aws.bodies[0]
    assert head.startswith(b'POST / HTTP/1.1\r\n')
    assert value(head, b'content-type') == b'application/x-www-form-urlencoded; charset=utf-8'


@on_loops
async def test_roles_are_assumed_again_before_they_end(sts, clock):
    async with sts() as (aws, request):
        role = assumed_role(request, without_forget, ROLE + 'R')
        aws.end = in_seconds(clock, 3600)
        await role()
        clock.now += 3590
        assert repr(role) == f'<Credentials of the role {ROLE}R: good until {aws.end[:19]}+00:00>'
        aws.end = in_seconds(clock, 3600)
        await role()
        assert len(aws.asked) == 2
        # A role of a role.
        assert await assumed_role(request, role, ROLE + 'S')() == keys('S')
        assert aws.asked[2]['as'] == b'R'


def error_of_sts(status, code, message='Who are you?'):
    return response(status, f"""<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>
<RequestId>1</RequestId></ErrorResponse>""".encode())


@on_loops
async def test_what_a_role_is_assumed_with_is_fetched_anew_when_sts_refuses_it(sts):
    async with sts(AssumeRole=error_of_sts(403, 'ExpiredToken')) as (aws, request):
        base = Static()
        error = await failure_of(assumed_role(request, base, ROLE + 'R'))
        assert str(error) == (
            f"the role {ROLE}R: STS answered 403: 'ExpiredToken', 'Who are you?'")
        assert not error.is_lasting
        assert base.forgotten == 1
        assert [each['as'] for each in aws.asked] == [b'BASE0', b'BASE1']

        aws.asked.clear()
        await failure_of(assumed_role(request, without_forget, ROLE + 'R'))
        assert len(aws.asked) == 1

        answers = [error_of_sts(403, 'InvalidClientTokenId'), None]
        aws.changed['AssumeRole'] = lambda head: answers.pop(0) or response(
            200, STS_ANSWER.format(action='AssumeRole', id='R', end=FAR).encode())
        assert await assumed_role(request, base, ROLE + 'R')() == keys('R')
        assert base.forgotten == 2


@on_loops
async def test_what_a_role_is_assumed_with_can_fail(sts):
    async def failing():
        raise KeyError('x')

    async with sts() as (aws, request):
        error = await failure_of(assumed_role(request, failing, ROLE + 'R'))
        assert str(error) == f"the role {ROLE}R: KeyError: 'x'"
        assert type(error.__cause__) is KeyError
        error = await failure_of(assumed_role(request, from_environment(), ROLE + 'R'))
        assert str(error) == f'the role {ROLE}R: the environment: AWS_ACCESS_KEY_ID is not set'
        assert error.is_lasting
        assert aws.asked == []


# What STS answers, the error, and whether the same would come again.
STS_ANSWERS = {
    'denied': (error_of_sts(403, 'AccessDenied', 'User: x is not authorized'),
               "STS answered 403: 'AccessDenied', 'User: x is not authorized'", True),
    'a long message': (error_of_sts(400, 'ValidationError', 'x' * 1000),
                       f"STS answered 400: 'ValidationError', '{'x' * 300}'", True),
    'busy': (error_of_sts(400, 'Throttling', 'Rate exceeded'),
             "STS answered 400: 'Throttling', 'Rate exceeded'", False),
    'the provider is not reached': (error_of_sts(400, 'IDPCommunicationError', ''),
                                    "STS answered 400: 'IDPCommunicationError'", False),
    'a failure': (response(503, b'<html>'), 'STS answered 503', False),
    'a redirect': (response(307, b'', b'location: /'), 'STS answered 307', False),
    'no XML': (response(200, b's3cret'), 'what came has no AccessKeyId', False),
    'no ID': (response(200, b'<a/>'), 'what came has no AccessKeyId', False),
    'no secret': (response(200, b'<a><AccessKeyId>A</AccessKeyId></a>'),
                  'what came has no SecretAccessKey', False),
    'declarations': (
        response(200, b'<!DOCTYPE a [<!ENTITY b "B">]><a><AccessKeyId>&b;</AccessKeyId></a>'),
        'what came has no AccessKeyId', False),
    'too much': (response(200, b' ' * 65537), 'an answer has more than 65536 bytes', False),
    'an end that has passed': (
        response(200, STS_ANSWER.format(action='A', id='A', end='2001-01-01T00:00:00Z').encode()),
        'the credentials that came have ended at 2001-01-01T00:00:00+00:00, or the clock of this '
        'machine is wrong', False),
}


@pytest.mark.parametrize('sent, message, is_lasting', STS_ANSWERS.values(), ids=STS_ANSWERS)
@on_one_loop
async def test_what_sts_may_answer(sts, files, sent, message, is_lasting):
    (files / 'token').write_text('t0ken')
    base = Static()
    async with sts(AssumeRole=sent, AssumeRoleWithWebIdentity=sent) as (aws, request):
        for credentials, name in (
                (assumed_role(request, base, ROLE + 'R'), f'the role {ROLE}R'),
                (from_web_identity(request, role_arn=ROLE + 'W', token_file=str(files / 'token')),
                 'web identity')):
            error = await failure_of(credentials)
            assert str(error) == f'{name}: {message}'
            assert (error.is_lasting, error.__cause__) == (is_lasting, None)
        assert len(aws.asked) == 2
        assert base.forgotten == 0


@on_loops
async def test_the_token_of_a_web_identity_is_read_at_each_fetch(sts, files, clock, setenv):
    setenv(AWS_ROLE_ARN=ROLE + 'W', AWS_WEB_IDENTITY_TOKEN_FILE=str(files / 'token'))
    async with sts() as (aws, request):
        credentials = from_web_identity(request)
        for token in 't0ken-1', 't0ken-2\n':
            (files / 'token').write_text(token)
            assert await credentials() == keys('W')
            clock.now += 11
            credentials.forget()
        other = from_web_identity(
            request, role_arn=ROLE + 'V', token_file=str(files / 'token'), session_name='me')
        assert await other() == keys('V')
    assert aws.asked == [
        {'Action': 'AssumeRoleWithWebIdentity', 'RoleArn': ROLE + 'W',
         'WebIdentityToken': 't0ken-1'},
        {'Action': 'AssumeRoleWithWebIdentity', 'RoleArn': ROLE + 'W',
         'WebIdentityToken': 't0ken-2'},
        {'Action': 'AssumeRoleWithWebIdentity', 'RoleArn': ROLE + 'V', 'RoleSessionName': 'me',
         'WebIdentityToken': 't0ken-2'}]


# With us-gov and an unknown one, which are of the first domain.
REGIONS = ['us-east-1', 'eu-west-2', 'cn-north-1', 'us-gov-west-1', 'us-iso-east-1',
           'us-isob-east-1', 'us-isof-south-1', 'eu-isoe-west-1', 'eusc-de-east-1', 'xx-new-1']


@on_one_loop
async def test_sts_is_where_botocore_expects_it():
    async def get_connection(scheme, host, port):
        hosts.append(f'{scheme}://{host}')
        raise OSError('no network')

    hosts = []
    session = botocore.session.Session()
    session.register_component('data_loader', LOADER)
    session.set_credentials('A', 's3cret')
    async with pool(get_connection=get_connection) as request:
        for region in REGIONS:
            await failure_of(assumed_role(request, without_forget, ROLE + 'R', region=region))
            assert hosts.pop() == session.create_client('sts', region).meta.endpoint_url


# What is given, the variables, and where STS is asked, or why it is not.
@pytest.mark.parametrize('given, variables, expected', [
    ({}, {'REGION': 'a', 'DEFAULT_REGION': 'b'}, 'https://sts.a.amazonaws.com'),
    ({}, {'DEFAULT_REGION': 'b'}, 'https://sts.b.amazonaws.com'),
    ({'region': 'c'}, {'REGION': 'a'}, 'https://sts.c.amazonaws.com'),
    ({}, {'REGION': 'a', 'ENDPOINT_URL': 'http://a.example.com'}, 'http://a.example.com'),
    ({}, {'ENDPOINT_URL_STS': 'http://b.example.com/', 'ENDPOINT_URL': 'http://a.example.com'},
     'http://b.example.com'),
    ({'endpoint': 'https://c.example.com'}, {'ENDPOINT_URL_STS': 'http://b.example.com'},
     'https://c.example.com'),
    ({}, {'REGION': 'a', 'ENDPOINT_URL_STS': 'http://b.example.com',
          'IGNORE_CONFIGURED_ENDPOINT_URLS': 'true'}, 'https://sts.a.amazonaws.com'),
    ({}, {}, 'the region of STS is not known: give one, or set AWS_REGION'),
    ({'region': 'a/b'}, {}, 'a region must have letters, digits and "-" only, got \'a/b\''),
])
@on_one_loop
async def test_where_sts_is(setenv, files, given, variables, expected):
    async def get_connection(scheme, host, port):
        raise OSError(f'no network to {scheme}://{host}')

    (files / 'token').write_text('t0ken')
    setenv(**{f'AWS_{name}': text for name, text in variables.items()})
    async with pool(get_connection=get_connection) as request:
        for credentials in (
                assumed_role(request, without_forget, ROLE + 'R', **given),
                from_web_identity(request, role_arn=ROLE + 'R', token_file=str(files / 'token'),
                                  **given)):
            error = await failure_of(credentials)
            assert str(error).endswith(f'{expected}' if ' ' in expected
                                       else f'OSError: no network to {expected}')
            assert error.is_lasting == (' ' in expected)


# ------------------------------------------------------------------------ processes, and botocore


@on_one_loop
async def test_a_process_ends_when_its_time_is_over(files, monkeypatch):
    monkeypatch.setattr(lowhaio_aws_credentials, 'PROCESS_TIMEOUT', 0.01)
    (files / 'config').write_text('[default]\ncredential_process = sleep 1000')
    async with pool() as request:
        error = await failure_of(from_profile(request))
    assert str(error) == ("the profile: 'default': credential_process: the command took longer "
                          'than 0.01 seconds')
    assert not error.is_lasting


@on_loops
async def test_a_process_is_run_again_before_its_credentials_end(files, clock):
    printed = json.dumps({'Version': 1, 'AccessKeyId': 'P', 'SecretAccessKey': 's3cret',
                          'SessionToken': 't0ken', 'Expiration': in_seconds(clock, 3600)})
    (files / 'command').write_text(f'echo x >> {files / "runs"}; echo "$1"')
    (files / 'config').write_text(
        f"[default]\ncredential_process = sh {files / 'command'} '{printed}'")
    async with pool() as request:
        credentials = from_profile(request)
        for _ in range(2):
            assert await asyncio.gather(*(credentials() for _ in range(10))) == 10 * [
                ('P', 's3cret', ((b'x-amz-security-token', b't0ken'),))]
        clock.now += 3000
        await credentials()
    assert (files / 'runs').read_text() == 'x\nx\n'


class Session:
    """A session of botocore, as far as it is used."""

    def __init__(self, found):
        self.found = found
        self.asked = 0

    def get_credentials(self):
        # It blocks, so it must not be called in the thread of the loop.
        assert threading.current_thread() is not threading.main_thread()
        self.asked += 1
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


@on_loops
async def test_credentials_of_botocore(files, setenv, clock):
    (files / 'config').write_text(f'[default]\n{OF_ROLE}mfa_serial = x')
    setenv(**OF_ENVIRONMENT, AWS_SESSION_TOKEN='t0ken')
    credentials = from_botocore(botocore.session.Session())
    assert await credentials() == ('E', 's3cret', ((b'x-amz-security-token', b't0ken'),))

    session = Session(botocore.credentials.Credentials('A', 's3cret'))
    credentials = from_botocore(session)
    found = await asyncio.gather(*(credentials() for _ in range(100)))
    assert found == 100 * [('A', 's3cret', ())]
    assert session.asked == 1
    session.found = botocore.credentials.Credentials('B', 's3cret')
    clock.now += 59
    assert (await credentials())[0] == 'A'
    clock.now += 2
    assert (await credentials())[0] == 'B'
    assert session.asked == 2

    session.found = RuntimeError('no network')
    clock.now += 61
    assert (await credentials())[0] == 'B'
    credentials.forget()
    error = await failure_of(credentials)
    assert str(error) == 'botocore: RuntimeError: no network'
    assert error.__cause__ is session.found
    assert not error.is_lasting
    session.found = None
    assert str(await failure_of(credentials)) == 'botocore: it finds none'


# --------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize('function, message', [
    (lambda: from_chain(None), 'a coroutine function was expected, got NoneType'),
    (lambda: from_container(Pool()), 'a coroutine function was expected, got tuple'),
    (lambda: from_instance('x'), 'a coroutine function was expected, got str'),
    (lambda: from_profile('p'), 'a coroutine function was expected, got str'),
    (lambda: from_web_identity(None), 'a coroutine function was expected, got NoneType'),
    (lambda: assumed_role(None, without_forget, 'r'),
     'a coroutine function was expected, got NoneType'),
    (lambda: assumed_role(without_forget, ('A', 's', ()), 'r'),
     'a coroutine function was expected, got tuple'),
    (lambda: assumed_role(without_forget, without_forget, None),
     'role_arn must be a str, got NoneType'),
    (lambda: assumed_role(without_forget, without_forget, 'r', duration=60),
     'duration must be 900 seconds or more, got 60'),
    (lambda: assumed_role(without_forget, without_forget, 'r', duration='900'),
     "duration must be 900 seconds or more, got '900'"),
    (lambda: from_profile(without_forget, b'p'),
     "name must be a str that is not empty, got b'p'"),
    (lambda: from_chain(without_forget, profile=''),
     "name must be a str that is not empty, got ''"),
    (lambda: from_chain(without_forget, region=1),
     'region must be a str that is not empty, got 1'),
    (lambda: from_instance(without_forget, endpoint=b'x'),
     "endpoint must be a str that is not empty, got b'x'"),
    (lambda: region_of_profile(1), 'name must be a str that is not empty, got 1'),
    (lambda: from_botocore('p'), 'session must have get_credentials, as those of botocore and '
     'boto3 do, got str'),
])
def test_arguments_that_make_no_sense(function, message):
    with pytest.raises((TypeError, ValueError)) as caught:
        function()
    assert str(caught.value) == message


def test_the_example_of_the_readme(capsys, setenv):
    setenv(**OF_ENVIRONMENT)
    script = Answering(response(200, b'The content'))
    with internet(script, '*.s3.eu-west-2.amazonaws.com'):
        for block in python_blocks(HERE / 'README.md'):
            run_block(block)
    assert capsys.readouterr().out == "200 b'The content'\n"
    assert b'Credential=E/' in value(script.heads[0], b'authorization')
