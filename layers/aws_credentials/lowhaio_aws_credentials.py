"""Credentials for AWS over lowhaio: found where the SDKs of AWS look, and renewed before they end.

::

    request, close = Pool()
    credentials = from_chain(request)
    signed_request = signed(request, credentials, 's3', 'eu-west-2')

Each `from_…` function, and `assumed_role`, returns `Credentials`, which `lowhaio_aws_sigv4.signed`
takes. Nothing is fetched before they are called for the first time. Then one of those who ask
fetches for all of them, in its own task.

The first part below keeps what was fetched. It does not know where that comes from. Each part
after it is one kind of source: a coroutine function that fetches once, keeps nothing that it can
read again, and raises a `CredentialsError`. The last part has what they share.
"""

from __future__ import annotations

import asyncio
import configparser
import contextlib
import ipaddress
import json
import logging
import math
import os
import random
import re
import shlex
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple, NoReturn
from urllib.parse import quote, urlencode
from xml.etree import ElementTree

from lowhaio import Fields, Headers, HttpError, Phase, streamed
from lowhaio_aws_sigv4 import signed

__all__ = [
    'Credentials', 'CredentialsError', 'assumed_role', 'from_botocore', 'from_chain',
    'from_container', 'from_environment', 'from_instance', 'from_profile', 'from_web_identity',
    'region_of_profile']

LOGGER = logging.getLogger('lowhaio_aws_credentials')

# Seconds before the end of credentials from which on they are renewed. One task does that, and the
# others go on with those that they have. It is botocore's time for this, but at most a third of
# what the credentials have left when they are fetched: a role can be assumed for 15 minutes.
RENEW_BEFORE = 15 * 60
# From here on all wait for the new ones. A request that is signed with those that end must still
# arrive, and clocks differ. At most a tenth of what they have left.
NEEDED_BEFORE = 60
# Seconds between attempts to renew credentials that are still good.
RENEW_AGAIN_AFTER = 60
# Seconds after a fetch in which `forget` does nothing. The requests that were under way with the
# credentials before fail one after the other, and must not all lead to a fetch.
FORGET_AFTER = 10
# An instance whose credentials have ended is asked again after so many seconds, by chance, as
# botocore does. Many instances must not ask at the same time while there is an outage.
ASK_INSTANCE_AGAIN_AFTER = 5 * 60, 10 * 60
# Seconds after which a session of botocore is asked again. It knows itself when to renew.
ASK_BOTOCORE_AFTER = 60

# Bytes of an answer. They have two or three thousand.
MAX_ANSWER = 64 * 1024
# Characters of what a server says that are shown in an error.
MAX_SHOWN = 300

# Seconds to connect, and to wait for an answer. Endpoints of containers are on the same machine.
CONTAINER_TIMEOUTS = {'connect': 2.0, 'read': 2.0}
# Seconds that a `credential_process` may take.
PROCESS_TIMEOUT = 60

Request = Callable[..., Awaitable[tuple[bytes, Fields, Any]]]
Keys = tuple[str, str, Fields]
# As `signed` takes them.
GetKeys = Callable[[], Awaitable[tuple[str, str, Headers]]]


class CredentialsError(Exception):
    """There are no credentials. The message tells the source and what was wrong.

    `__cause__` is the exception behind it, if there is one, such as an `HttpError`.
    """

    is_lasting: bool = False
    """The same would come again, so lowhaio-retry does not try again."""

    def __init__(self, message: str, is_lasting: bool = False) -> None:
        super().__init__(message)
        self.is_lasting = is_lasting


class NotConfigured(CredentialsError):
    """Nothing tells that this source is to be used, so a chain asks the next one.

    It stays within this module.
    """

    def __init__(self, message: str, is_lasting: bool = True) -> None:
        super().__init__(message, is_lasting)


class Fetched(NamedTuple):
    """What a source returns."""

    keys: Keys
    # When they end, in seconds since 1970. None if that is not known, or not to be heeded.
    expires: float | None
    # In how many seconds the source is asked again, if the end is None.
    ask_again_after: float


Fetch = Callable[[], Awaitable[Fetched]]


# ------------------------------------------------------------------------ what was fetched is kept
#
# Many tasks need credentials at once, and the service that gives them is slow, or limits how often
# it can be asked. So one task fetches and the others wait for it. A task of our own would do, but
# nobody would own it. So the one that comes first fetches. If it is cancelled, all who wait are
# woken, and the first of them to run fetches.


class Held(NamedTuple):
    keys: Keys
    expires: float | None
    fetched_at: float
    # From here on there have to be new ones.
    needed_at: float


class Credentials:
    """Credentials that are fetched at the first call, and renewed before they end.

    `await credentials()` returns `(access_key_id, secret_access_key, fields)`, as
    `lowhaio_aws_sigv4.signed` and others take them. The fields are `x-amz-security-token`, or
    none. Raises `CredentialsError`.

    An object can be used from one event loop after the other, but not by several threads at once.
    """

    __slots__ = ('_name', '_fetch', '_held', '_fresh_until', '_is_fetching', '_waiters',
                 '__weakref__')

    def __init__(self, name: str, fetch: Fetch) -> None:
        self._name = name
        self._fetch = fetch
        self._held: Held | None = None
        # No one needs to fetch before.
        self._fresh_until = -math.inf
        self._is_fetching = False
        self._waiters: dict[asyncio.Future[CredentialsError | None], None] = {}

    def __repr__(self) -> str:
        held = self._held
        state = ('not fetched' if held is None else 'fetched' if held.expires is None
                 else f'good until {text_of(held.expires)}')
        if self._is_fetching:
            state += f', being fetched, {len(self._waiters)} waiting'
        return f'<Credentials of {self._name}: {state}>'

    def __reduce__(self) -> NoReturn:
        # The secrets would be in it, and go wherever it is sent.
        raise TypeError('Credentials can not be pickled or copied: make others where they are '
                        'needed, with the same function')

    async def __call__(self) -> Keys:
        while (held := self._held) is None or time.time() >= self._fresh_until:
            if not self._is_fetching:
                return await self._renewed()
            if held is not None and time.time() < held.needed_at:
                break
            await self._wait()
        return held.keys

    def forget(self) -> None:
        """Fetch new credentials at the next call, since a service has refused these.

        Those that were fetched within the last ten seconds are kept: it was those before that were
        refused, or new ones would be refused too.
        """
        if self._held is not None and not (
                0 <= time.time() - self._held.fetched_at < FORGET_AFTER):
            self._held = None

    async def _renewed(self) -> Keys:
        held = self._held
        if held is not None:
            # Also if whoever asks is cancelled: a service that is slow must not make a request
            # after the other run out of its time, while there are credentials that are good.
            self._fresh_until = min(time.time() + RENEW_AGAIN_AFTER, held.needed_at)
        self._is_fetching = True
        outcome = None
        try:
            with told_as(self._name, is_chosen=True):
                held = self._held = self._hold(await self._fetch())
        except CredentialsError as error:
            outcome = error
            held = self._held  # or None, if they were forgotten meanwhile
            if held is None or time.time() >= held.needed_at:
                raise
            LOGGER.warning('Renewing credentials failed, and those before are used on: %s', error)
        finally:
            self._is_fetching = False
            waiters, self._waiters = self._waiters, {}
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(outcome)
            # The exception refers to this frame, and the frame to it.
            outcome = None
        return held.keys

    async def _wait(self) -> None:
        """Wait until whoever fetches has ended, and raise if that has failed."""
        waiter: asyncio.Future[CredentialsError | None] = (
            asyncio.get_running_loop().create_future())
        self._waiters[waiter] = None
        try:
            error = await waiter
        finally:
            self._waiters.pop(waiter, None)
        if error is not None:
            # An exception that many tasks raise would have the tracebacks of all of them.
            raise CredentialsError(str(error), error.is_lasting) from error.__cause__

    def _hold(self, fetched: Fetched) -> Held:
        now = time.time()
        keys, expires, ask_again_after = fetched
        if expires is None:
            self._fresh_until = now + ask_again_after
            return Held(keys, None, now, math.inf)
        left = expires - now
        if left <= 0:
            raise CredentialsError(f'the credentials that came have ended at {text_of(expires)}, '
                                   'or the clock of this machine is wrong')
        self._fresh_until = expires - min(RENEW_BEFORE, left / 3)
        return Held(keys, expires, now, expires - min(NEEDED_BEFORE, left / 10))


# -------------------------------------------------------------------------------------- the chain


def from_chain(request: Request, *, profile: str | None = None, region: str | None = None,
               sts_endpoint: str | None = None) -> Credentials:
    """Credentials from the first source that is configured, in botocore's order.

    That is: the environment, the role of the profile, the web identity of the environment, the
    rest of the profile, the container, and the instance. A source that is configured and fails is
    an error, and the ones behind it are not asked: they could be of somebody else. For the same
    reason the source that was found stays the one for all renewals.

    - `request`: a plain one of lowhaio, which does not sign and does not follow redirects.
    - `profile`: a name. With it, the environment is left out, as in botocore.
    - `region`, `sts_endpoint`: for roles, as for `from_profile`.
    """
    of_profile = Profile(request, profile, region, sts_endpoint)
    of_environment = [] if profile is not None else [
        ('the environment', fetch_from_environment)]
    of_web_identity = [] if profile is not None else [
        ('web identity', partial(fetch_of_web_identity, checked(request), region, sts_endpoint))]
    return Credentials('the chain', Chain((
        *of_environment, (of_profile.title, of_profile.fetch_role), *of_web_identity,
        (of_profile.title, of_profile.fetch),
        ('the container', partial(fetch_from_container, request)),
        ('the instance', Instance(request, None).fetch))).fetch)


class Chain:
    __slots__ = ('sources', 'found')

    def __init__(self, sources: tuple[tuple[str, Fetch], ...]) -> None:
        self.sources = sources
        # What is left of the sources once one of them has had credentials: that one.
        self.found: tuple[tuple[str, Fetch], ...] = ()

    async def fetch(self) -> Fetched:
        # In order, and each once: the profile is asked twice.
        said: dict[str, None] = {}
        for source in self.found or self.sources:
            name, fetch = source
            try:
                with told_as(name):
                    fetched = await fetch()
                self.found = (source,)
                return fetched
            except CredentialsError as error:
                said[str(error)] = None
                last = error
                if not isinstance(error, NotConfigured):
                    break
        raise CredentialsError('; '.join(said), last.is_lasting) from last.__cause__


# -------------------------------------------------------------------------------- the environment


def from_environment() -> Credentials:
    """Credentials from `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`.

    They end at `AWS_CREDENTIAL_EXPIRATION`, if that is set. Then the environment is read again.
    """
    return Credentials('the environment', fetch_from_environment)


async def fetch_from_environment() -> Fetched:
    access_key_id = os.environ.get('AWS_ACCESS_KEY_ID')
    if not access_key_id:
        raise NotConfigured('AWS_ACCESS_KEY_ID is not set')
    secret_access_key = os.environ.get('AWS_SECRET_ACCESS_KEY')
    if not secret_access_key:
        raise lasting('AWS_ACCESS_KEY_ID is set, but AWS_SECRET_ACCESS_KEY is not')
    # The older name comes first in botocore.
    token = os.environ.get('AWS_SECURITY_TOKEN') or os.environ.get('AWS_SESSION_TOKEN')
    return Fetched(keys_of(access_key_id, secret_access_key, token),
                   time_of(os.environ.get('AWS_CREDENTIAL_EXPIRATION')), math.inf)


# ------------------------------------------------------------------------------------- containers
#
# https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html

CONTAINER = 'http://169.254.170.2'
# ECS, and EKS Pod Identity by IPv4 and IPv6. Only these, and the machine itself, are asked without
# TLS: whoever can set a variable must not have credentials sent over the network.
CONTAINER_HOSTS = frozenset(map(ipaddress.ip_address, (
    '169.254.170.2', '169.254.170.23', 'fd00:ec2::23')))
URL = re.compile(r'(https?)://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]+)?(?![^/?#])[^#\s]*',
                 re.IGNORECASE)


def from_container(request: Request) -> Credentials:
    """Credentials of a task of ECS, or of a pod of EKS with Pod Identity.

    The endpoint is that of `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI`, or of
    `AWS_CONTAINER_CREDENTIALS_FULL_URI`. That must be https:, or have a loopback address or the
    one of ECS or EKS. `AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE` is read at each fetch.

    - `request`: a plain one of lowhaio, which does not sign and does not follow redirects.
    """
    return Credentials('the container', partial(fetch_from_container, checked(request)))


async def fetch_from_container(request: Request) -> Fetched:
    url = url_of_container()
    token = authorization_of_container()
    headers = ((b'accept', b'application/json'),
               *(((b'authorization', token.encode()),) if token else ()))
    code, content = await answer(request, b'GET', url, headers, timeouts=CONTAINER_TIMEOUTS)
    if code != b'200':
        raise refusal('the endpoint', code, *told_in_json(content))
    return fetched_of(parsed_json(content))


def url_of_container() -> str:
    relative = os.environ.get('AWS_CONTAINER_CREDENTIALS_RELATIVE_URI')
    if relative:
        if not relative.startswith('/'):
            raise lasting('AWS_CONTAINER_CREDENTIALS_RELATIVE_URI must begin with "/"')
        return CONTAINER + relative
    url = os.environ.get('AWS_CONTAINER_CREDENTIALS_FULL_URI')
    if not url:
        raise NotConfigured('neither AWS_CONTAINER_CREDENTIALS_RELATIVE_URI nor '
                            'AWS_CONTAINER_CREDENTIALS_FULL_URI is set')
    match = URL.fullmatch(url)
    if match is None:
        raise lasting('AWS_CONTAINER_CREDENTIALS_FULL_URI must be a URL of http: or https:')
    scheme, host = match[1].lower(), match[2].lower().strip('[]')
    if scheme == 'http' and not is_near(host):
        raise lasting(
            'AWS_CONTAINER_CREDENTIALS_FULL_URI must be https:, or have a loopback address or one '
            f'of {", ".join(sorted(map(str, CONTAINER_HOSTS)))}, but its host is {host!r}')
    return url


def is_near(host: str) -> bool:
    if host == 'localhost':  # which lowhaio never asks a nameserver for
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address in CONTAINER_HOSTS


def authorization_of_container() -> str:
    path = os.environ.get('AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE')
    token = (text_in(path, 'AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE') if path
             else os.environ.get('AWS_CONTAINER_AUTHORIZATION_TOKEN', ''))
    if not is_field_value(token):
        raise lasting('the authorization token must be printable ASCII in one line')
    return token


# -------------------------------------------------------------------------------------- instances
#
# https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html
#
# Only IMDSv2 is used: with the older version, whoever can make a program on the instance ask for a
# URL has its credentials.

TOKEN_TTL = 6 * 60 * 60
# Seconds before its end from which on a token is not used any more.
TOKEN_MARGIN = 60
ROLES = '/latest/meta-data/iam/security-credentials/'


def from_instance(request: Request, *, endpoint: str | None = None) -> Credentials:
    """Credentials of the role of an instance of EC2, from its metadata service (IMDSv2).

    If they have ended, and the service has no newer ones, they are used on, because AWS accepts
    them in such an outage. The service is asked again after 5 to 10 minutes.

    - `request`: a plain one of lowhaio, which does not sign and does not follow redirects.
    - `endpoint`: in place of `AWS_EC2_METADATA_SERVICE_ENDPOINT`. Without both, it is
      `http://169.254.169.254`, or `http://[fd00:ec2::254]` if
      `AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE` is `IPv6`.

    To connect, and to wait for each answer, may take `AWS_METADATA_SERVICE_TIMEOUT` seconds, or 1.
    """
    return Credentials('the instance', Instance(request, endpoint).fetch)


class Instance:
    __slots__ = ('request', 'endpoint', 'token', 'token_good_until')

    def __init__(self, request: Request, endpoint: str | None) -> None:
        self.request = checked(request)
        self.endpoint = endpoint
        checked_text(endpoint=endpoint)
        self.token = b''
        self.token_good_until = -math.inf

    async def fetch(self) -> Fetched:
        if os.environ.get('AWS_EC2_METADATA_DISABLED', '').lower() == 'true':
            raise NotConfigured('AWS_EC2_METADATA_DISABLED is true')
        url = (self.endpoint or instance_endpoint()).rstrip('/')
        timeouts = instance_timeouts()
        role = (await self.get(url, '', timeouts)).decode('latin-1').strip()
        if not role or not role.isprintable():
            raise CredentialsError('the metadata service tells no name of a role')
        found = parsed_json(await self.get(url, quote(role), timeouts))
        # Other codes tell that the role can not be assumed.
        if found.get('Code', 'Success') != 'Success':
            raise refusal('the metadata service', b'200', found['Code'], found.get('Message'))
        fetched = fetched_of(found)
        if fetched.expires is not None and fetched.expires <= time.time():
            LOGGER.warning('The credentials of the instance have ended at %s, and there are no '
                           'newer ones. They are used on.', text_of(fetched.expires))
            return Fetched(fetched.keys, None, random.uniform(*ASK_INSTANCE_AGAIN_AFTER))
        return fetched

    async def get(self, url: str, name: str, timeouts: Mapping[str, float]) -> bytes:
        code, content = await self.asked(url, name, timeouts)
        if code == b'401':
            # The instance may have been stopped and started again.
            self.token_good_until = -math.inf
            code, content = await self.asked(url, name, timeouts)
        if code == b'404' and not name:
            raise lasting('the metadata service answered 404: the instance has no role')
        if code != b'200':
            raise refusal('the metadata service', code)
        return content

    async def asked(self, url: str, name: str, timeouts: Mapping[str, float],
                    ) -> tuple[bytes, bytes]:
        token = await self.get_token(url, timeouts)
        return await answer(
            self.request, b'GET', url + ROLES + name, ((b'x-aws-ec2-metadata-token', token),),
            timeouts=timeouts)

    async def get_token(self, url: str, timeouts: Mapping[str, float]) -> bytes:
        if time.time() < self.token_good_until:
            return self.token
        try:
            code, content = await answer(
                self.request, b'PUT', f'{url}/latest/api/token',
                ((b'x-aws-ec2-metadata-token-ttl-seconds', b'%d' % TOKEN_TTL),
                 (b'content-length', b'0')), timeouts=timeouts)
        except HttpError as error:
            if not isinstance(error.__cause__, TimeoutError) or error.phase != Phase.HEAD:
                raise
            raise CredentialsError(
                f'{described(error)} (in a container, the metadata service can answer only if the '
                'hop limit of the instance is 2 or more)') from error
        if code != b'200':
            raise refusal('the metadata service, asked for a token,', code)
        if not content or not is_field_value(content.decode('latin-1')):
            raise CredentialsError('the metadata service gave a token that can not be sent')
        self.token, self.token_good_until = content, time.time() + TOKEN_TTL - TOKEN_MARGIN
        return content


def instance_endpoint() -> str:
    endpoint = os.environ.get('AWS_EC2_METADATA_SERVICE_ENDPOINT')
    mode = os.environ.get('AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE') or 'ipv4'
    if mode.lower() not in ('ipv4', 'ipv6'):
        raise lasting('AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE must be IPv4 or IPv6, got '
                      f'{mode[:MAX_SHOWN]!r}')
    return endpoint or (
        'http://[fd00:ec2::254]' if mode.lower() == 'ipv6' else 'http://169.254.169.254')


def instance_timeouts() -> Mapping[str, float]:
    text = os.environ.get('AWS_METADATA_SERVICE_TIMEOUT') or '1'
    if not re.fullmatch(r'[0-9]{1,5}(\.[0-9]{1,5})?', text) or not float(text):
        raise lasting('AWS_METADATA_SERVICE_TIMEOUT must be a number of seconds, got '
                      f'{text[:MAX_SHOWN]!r}')
    return {'connect': float(text), 'read': float(text)}


# ------------------------------------------------------------------------------------ STS's roles
#
# https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html

# The domains of STS by the beginning of a region. All other regions have the first one.
DOMAINS = (('', 'amazonaws.com'), ('cn-', 'amazonaws.com.cn'), ('us-iso-', 'c2s.ic.gov'),
           ('us-isob-', 'sc2s.sgov.gov'), ('us-isof-', 'csp.hci.ic.gov'),
           ('eu-isoe-', 'cloud.adc-e.uk'), ('eusc-', 'amazonaws.eu'))
FORM = (b'content-type', b'application/x-www-form-urlencoded; charset=utf-8')

# STS answers with these, all of them 400 or 403, when the keys of a request are not good any more.
KEYS_REFUSED = frozenset(('ExpiredToken', 'ExpiredTokenException', 'InvalidClientTokenId'))
# The same request may be answered well later, though these come with 400.
PASSING = frozenset(('IDPCommunicationError', 'RequestLimitExceeded', 'Throttling',
                     'ThrottlingException', 'TooManyRequestsException')) | KEYS_REFUSED


class Sts(NamedTuple):
    """Where STS is, and the region that requests to it are signed for."""

    url: str
    region: str


def assumed_role(request: Request, credentials: GetKeys, role_arn: str, *,
                 session_name: str | None = None, external_id: str | None = None,
                 duration: int | None = None, region: str | None = None,
                 endpoint: str | None = None) -> Credentials:
    """Credentials of a role that is assumed with other credentials.

    - `request`: a plain one of lowhaio, which does not sign and does not follow redirects.
    - `credentials`: as for `signed`. If STS says that they have ended and they have a `forget()`,
      that is called, and the role assumed with those that come then.
    - `role_arn`, `session_name`, `external_id`: str. The name of the session is one with the
      time, if it is None.
    - `duration`: seconds, 900 or more. None leaves it to STS, which takes an hour.
    - `region`: of STS. None stands for `AWS_REGION`, or `AWS_DEFAULT_REGION`.
    - `endpoint`: the URL of STS. None stands for `AWS_ENDPOINT_URL_STS`, `AWS_ENDPOINT_URL`, or
      the one of the region.
    """
    checked(credentials)
    if not isinstance(role_arn, str):
        raise TypeError(f'role_arn must be a str, got {type(role_arn).__name__}')
    checked_text(role_arn=role_arn, session_name=session_name, external_id=external_id,
                 region=region, endpoint=endpoint)
    if duration is not None and (not isinstance(duration, int) or duration < 900):
        raise ValueError(f'duration must be 900 seconds or more, got {duration!r}')
    fields = {'RoleArn': role_arn, 'RoleSessionName': session_name, 'ExternalId': external_id,
              'DurationSeconds': None if duration is None else str(duration)}
    return Credentials(f'the role {role_arn}', partial(
        fetch_assumed, checked(request), credentials, region, endpoint, fields))


def from_web_identity(request: Request, *, role_arn: str | None = None,
                      token_file: str | None = None, session_name: str | None = None,
                      region: str | None = None, endpoint: str | None = None) -> Credentials:
    """Credentials of a role that is assumed with a token in a file, as in pods of EKS (IRSA).

    - `request`: a plain one of lowhaio, which does not sign and does not follow redirects.
    - `role_arn`, `token_file`, `session_name`: None stands for `AWS_ROLE_ARN`,
      `AWS_WEB_IDENTITY_TOKEN_FILE` and `AWS_ROLE_SESSION_NAME`. The file is read at each fetch.
    - `region`, `endpoint`: as for `assumed_role`.
    """
    checked_text(role_arn=role_arn, token_file=token_file, session_name=session_name,
                 region=region, endpoint=endpoint)
    return Credentials('web identity', partial(
        fetch_of_web_identity, checked(request), region, endpoint, role_arn, token_file,
        session_name))


async def fetch_assumed(request: Request, credentials: GetKeys, region: str | None,
                        endpoint: str | None, fields: Mapping[str, str | None]) -> Fetched:
    return await assume(request, credentials, sts_at(region, endpoint), fields)


async def assume(request: Request, credentials: GetKeys, sts: Sts,
                 fields: Mapping[str, str | None]) -> Fetched:
    async def assumed() -> tuple[bytes, bytes]:
        keys = await credentials()

        # Called within, their error would be the cause of one of signing.
        async def these() -> tuple[str, str, Headers]:
            return keys

        return await posted(signed(request, these, 'sts', sts.region), sts, 'AssumeRole', fields)

    code, content = await assumed()
    forget = getattr(credentials, 'forget', None)
    if forget is not None and told_in_xml(content)[0] in KEYS_REFUSED:
        forget()
        code, content = await assumed()
    return of_sts(code, content)


async def fetch_of_web_identity(
        request: Request, region: str | None, endpoint: str | None, role_arn: str | None = None,
        token_file: str | None = None, session_name: str | None = None) -> Fetched:
    token_file = token_file or os.environ.get('AWS_WEB_IDENTITY_TOKEN_FILE')
    if not token_file:
        raise NotConfigured('AWS_WEB_IDENTITY_TOKEN_FILE is not set')
    role_arn = role_arn or os.environ.get('AWS_ROLE_ARN')
    if not role_arn:
        raise lasting('there is a token file, but AWS_ROLE_ARN is not set')
    return await assume_with_token(
        request, sts_at(region, endpoint), role_arn, token_file,
        session_name or os.environ.get('AWS_ROLE_SESSION_NAME'))


async def assume_with_token(request: Request, sts: Sts, role_arn: str, token_file: str,
                            session_name: str | None) -> Fetched:
    fields = {'RoleArn': role_arn, 'RoleSessionName': session_name,
              'WebIdentityToken': text_in(token_file, 'the token file')}
    return of_sts(*await posted(request, sts, 'AssumeRoleWithWebIdentity', fields))


async def posted(request: Request, sts: Sts, action: str, fields: Mapping[str, str | None],
                 ) -> tuple[bytes, bytes]:
    given = {name: value for name, value in fields.items() if value is not None}
    form = urlencode({'Action': action, 'Version': '2011-06-15',
                      'RoleSessionName': f'lowhaio-{int(time.time())}', **given}).encode()
    return await answer(request, b'POST', sts.url, (
        FORM, (b'content-length', b'%d' % len(form))), form)


def of_sts(code: bytes, content: bytes) -> Fetched:
    if code != b'200':
        raise refusal('STS', code, *told_in_xml(content))
    found = {name: found_in(content, name) for name in (
        'AccessKeyId', 'SecretAccessKey', 'SessionToken', 'Expiration')}
    return fetched_of(found, 'SessionToken')


def found_in(content: bytes, name: str) -> str | None:
    """The text of the first element of that name in an XML document."""
    # What STS sends declares nothing. Declarations are how a small document becomes a large one.
    if b'<!' not in content:
        with contextlib.suppress(ElementTree.ParseError):
            return ElementTree.fromstring(content).findtext(f'.//{{*}}{name}')
    return None


def told_in_xml(content: bytes) -> tuple[str | None, str | None]:
    """The code and the message of an error of STS."""
    return found_in(content, 'Code'), found_in(content, 'Message')


def sts_at(region: str | None, endpoint: str | None, of_profile: str | None = None,
           endpoint_of_profile: str | None = None) -> Sts:
    """What was given comes first, then the environment, and then the profile."""
    region = (region or os.environ.get('AWS_REGION') or os.environ.get('AWS_DEFAULT_REGION')
              or of_profile)
    is_ignored = os.environ.get('AWS_IGNORE_CONFIGURED_ENDPOINT_URLS', '').lower() == 'true'
    endpoint = endpoint or (None if is_ignored else (
        os.environ.get('AWS_ENDPOINT_URL_STS') or os.environ.get('AWS_ENDPOINT_URL')
        or endpoint_of_profile))
    if region is None and endpoint is None:
        raise lasting('the region of STS is not known: give one, or set AWS_REGION')
    region = region or 'us-east-1'
    if not re.fullmatch('[A-Za-z0-9-]+', region):
        raise lasting(f'a region must have letters, digits and "-" only, got {region!r}')
    [*_, domain] = (domain for start, domain in DOMAINS if region.startswith(start))
    return Sts((endpoint or f'https://sts.{region}.{domain}').rstrip('/') + '/', region)


# --------------------------------------------------------------------------------------- profiles
#
# https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html
#
# Both files are read at each fetch, so that what has changed is noticed. They are small. What
# botocore makes of them is what counts: it is the reader that most of them were tried with.

Sections = dict[str, dict[str, str]]
BY_BOTOCORE = 'This layer does not do that: use from_botocore(botocore.session.Session(…))'


def from_profile(request: Request, name: str | None = None, *, region: str | None = None,
                 sts_endpoint: str | None = None) -> Credentials:
    """Credentials as a profile in `~/.aws/config` and `~/.aws/credentials` says.

    It may have keys; a role with its `source_profile` or `credential_source`; a role with its
    `web_identity_token_file`; or a `credential_process`, which is run in a thread. For the files
    there are `AWS_CONFIG_FILE` and `AWS_SHARED_CREDENTIALS_FILE`.

    - `request`: a plain one of lowhaio, which does not sign and does not follow redirects.
    - `name`: None stands for `AWS_DEFAULT_PROFILE`, `AWS_PROFILE`, or `default`.
    - `region`: of STS. None stands for `AWS_REGION`, `AWS_DEFAULT_REGION`, or that of the profile.
    - `sts_endpoint`: the URL of STS. None stands for `AWS_ENDPOINT_URL_STS`, `AWS_ENDPOINT_URL`,
      the one of the profile, or the one of the region.
    """
    profile = Profile(request, name, region, sts_endpoint)
    return Credentials(profile.title, profile.fetch)


def region_of_profile(name: str | None = None) -> str | None:
    """The region of a profile, or None if it has none. The environment is not looked at.

    - `name`: None stands for `AWS_DEFAULT_PROFILE`, `AWS_PROFILE`, or `default`.

    Raises `CredentialsError` if a file can not be understood, or has no profile of that name.
    """
    checked_text(name=name)
    files = Files()
    try:
        return files.profiles[files.checked_name(name)].get('region')
    except NotConfigured:
        return None


class Profile:
    """The arguments of `from_profile`, and what they make of the files."""

    __slots__ = ('request', 'name', 'title', 'region', 'endpoint')

    def __init__(self, request: Request, name: str | None, region: str | None,
                 endpoint: str | None) -> None:
        self.request = checked(request)
        self.name = name
        self.title = 'the profile' if name is None else f'the profile {name!r}'
        self.region = region
        self.endpoint = endpoint
        checked_text(name=name, region=region, sts_endpoint=endpoint)

    async def fetch(self) -> Fetched:
        return await self.fetch_from(Files())

    async def fetch_role(self) -> Fetched:
        """Only the role of the profile. In a chain it comes before the rest."""
        files = Files()
        if not files.is_role(files.checked_name(self.name)):
            raise NotConfigured('it has no role to be assumed')
        return await self.fetch_from(files)

    async def fetch_from(self, files: Files) -> Fetched:
        name = files.checked_name(self.name)
        fetch = self.of_role if files.is_role(name) else self.without_role
        with told_as(repr(name)) if self.name is None else contextlib.nullcontext():
            return await fetch(files, name, (name,))

    async def of_role(self, files: Files, name: str, seen: tuple[str, ...]) -> Fetched:
        profile = files.profiles[name]
        if 'mfa_serial' in profile:
            raise lasting(f'it has an mfa_serial, which needs a code. {BY_BOTOCORE}')
        duration = profile.get('duration_seconds')
        if duration is not None and not re.fullmatch('[0-9]{1,6}', duration):
            raise lasting(f'duration_seconds must be digits, got {duration[:MAX_SHOWN]!r}')
        source, kind = profile.get('source_profile'), profile.get('credential_source')
        if (source is None) == (kind is None):
            raise lasting('a profile with a role_arn needs either a source_profile or a '
                          f'credential_source, got {"none" if source is None else "both"}')
        with told_as(f'the role {profile["role_arn"]}'):
            return await assume(
                self.request, partial(self.keys_for_role, files, source, kind, seen),
                self.sts(files), {
                    'RoleArn': profile['role_arn'], 'ExternalId': profile.get('external_id'),
                    'RoleSessionName': profile.get('role_session_name'),
                    'DurationSeconds': duration})

    async def keys_for_role(self, files: Files, source: str | None, kind: str | None,
                            seen: tuple[str, ...]) -> Keys:
        """The keys that a role is assumed with."""
        with told_as(f'its source_profile {source!r}' if kind is None
                     else f'its credential_source {kind[:MAX_SHOWN]!r}', is_chosen=True):
            return (await (self.of_kind(kind) if source is None
                           else self.of_source(files, source, seen))).keys

    async def of_kind(self, kind: str | None) -> Fetched:
        if kind == 'Environment':
            return await fetch_from_environment()
        if kind == 'Ec2InstanceMetadata':
            return await Instance(self.request, None).fetch()
        if kind == 'EcsContainer':
            return await fetch_from_container(self.request)
        raise lasting('it must be Environment, Ec2InstanceMetadata or EcsContainer')

    async def of_source(self, files: Files, source: str, seen: tuple[str, ...]) -> Fetched:
        """The credentials of a source_profile. Keys of its own come before its role."""
        if source not in files.profiles:
            raise lasting('there is no such profile')
        if not files.is_role(source) or files.has_keys(source):
            return await self.without_role(files, source, seen)
        if source in seen:
            raise lasting(f'the profiles lead in a circle: {" → ".join((*seen, source))}')
        return await self.of_role(files, source, (*seen, source))

    async def without_role(self, files: Files, name: str, seen: tuple[str, ...]) -> Fetched:
        profile = files.profiles[name]
        token_file = profile.get('web_identity_token_file')
        if token_file is not None:
            if 'role_arn' not in profile:
                raise lasting('it has a web_identity_token_file, but no role_arn')
            return await assume_with_token(
                self.request, self.sts(files), profile['role_arn'], token_file,
                profile.get('role_session_name'))
        if 'sso_account_id' in profile and 'sso_role_name' in profile:
            raise lasting(f'it is for IAM Identity Center (sso_…). {BY_BOTOCORE}')
        if 'aws_access_key_id' in files.credentials.get(name, ()):
            return keys_in(files.credentials[name])
        if 'login_session' in profile:
            raise lasting(f'it is for "aws login" (login_session). {BY_BOTOCORE}')
        if 'credential_process' in profile:
            with told_as('credential_process'):
                return await of_process(profile['credential_process'])
        if 'aws_access_key_id' in files.config.get(name, ()):
            return keys_in(files.config[name])
        raise NotConfigured('it has no credentials')

    def sts(self, files: Files) -> Sts:
        profile = files.profiles[files.checked_name(self.name)]
        return sts_at(self.region, self.endpoint, profile.get('region'),
                      files.endpoint_of(profile))


class Files:
    """What is in the two files now."""

    __slots__ = ('config', 'credentials', 'profiles', 'services')

    def __init__(self) -> None:
        sections = sections_in('AWS_CONFIG_FILE', '~/.aws/config')
        self.config = named(sections, 'profile', 'default')
        self.services = named(sections, 'services')
        self.credentials = sections_in('AWS_SHARED_CREDENTIALS_FILE', '~/.aws/credentials')
        # Each value of the second file is in place of the one of the first.
        self.profiles = {name: {**self.config.get(name, {}), **self.credentials.get(name, {})}
                         for name in (*self.config, *self.credentials)}

    def checked_name(self, name: str | None) -> str:
        given = next((each for each in (
            name, os.environ.get('AWS_DEFAULT_PROFILE'), os.environ.get('AWS_PROFILE'))
            if each is not None), None)
        if given is None and 'default' not in self.profiles:
            raise NotConfigured("no profile is named, and there is none with the name 'default'")
        if given is not None and given not in self.profiles:
            raise lasting(f'there is no profile {given!r} in the files of AWS_CONFIG_FILE and '
                          'AWS_SHARED_CREDENTIALS_FILE, or ~/.aws/config and ~/.aws/credentials')
        return given or 'default'

    def is_role(self, name: str) -> bool:
        profile = self.profiles[name]
        return 'role_arn' in profile and 'web_identity_token_file' not in profile

    def has_keys(self, name: str) -> bool:
        return not self.profiles[name].keys().isdisjoint((
            'aws_access_key_id', 'aws_secret_access_key'))

    def endpoint_of(self, profile: Mapping[str, str]) -> str | None:
        """The endpoint of STS, in the services of the profile, or that for all services."""
        nested = self.services.get(profile.get('services', ''), {}).get('sts', '')
        match = re.search(r'^endpoint_url\s*=\s*(\S+)\s*$', nested, re.MULTILINE)
        return profile.get('endpoint_url') if match is None else match[1]


def named(sections: Sections, kind: str, alone: str = '') -> Sections:
    """The sections that are called `[kind name]`, by their names, which may be quoted.

    The one with the name `alone` need not have the kind. Of two with one name the last one counts.
    """
    found: Sections = {}
    for title, values in sections.items():
        with contextlib.suppress(ValueError):  # a quotation mark without its other one
            words = [kind, alone] if title == alone else shlex.split(title)
            if len(words) == 2 and words[0] == kind:
                found[words[1]] = values
    return found


def sections_in(variable: str, default: str) -> Sections:
    """What is in the file that the variable names. If there is no such file, it is empty."""
    path = os.path.expanduser(os.path.expandvars(os.environ.get(variable) or default))
    parser = configparser.RawConfigParser()
    # The exceptions of the parser and of the decoder have text of the file, so they are no cause.
    try:
        with open(path, encoding='utf-8') as file:
            parser.read_file(file)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise lasting(f'{path} can not be read: {described(error)}') from error
    except UnicodeDecodeError:
        raise lasting(f'{path} must be UTF-8') from None
    except configparser.Error as error:
        line = getattr(error, 'lineno', None) or next(iter(getattr(error, 'errors', ())), '?')[0]
        raise lasting(f'{path} can not be understood: {type(error).__name__} in line {line}'
                      ) from None
    return {title: dict(parser.items(title)) for title in parser.sections()}


def keys_in(section: Mapping[str, str]) -> Fetched:
    secret = section.get('aws_secret_access_key')
    if secret is None:
        raise lasting('it has an aws_access_key_id, but no aws_secret_access_key')
    token = section.get('aws_security_token') or section.get('aws_session_token')
    return Fetched(keys_of(section['aws_access_key_id'], secret, token), None, math.inf)


async def of_process(command: str) -> Fetched:
    try:
        arguments = shlex.split(command)
    except ValueError as error:
        raise lasting(f'the command can not be split: {error}') from None
    # In a thread: a subprocess of asyncio can not be run on each loop, or takes tasks.
    try:
        done = await asyncio.to_thread(
            subprocess.run, arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            timeout=PROCESS_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        # The exception has the arguments, and what came until then.
        raise CredentialsError(f'the command took longer than {PROCESS_TIMEOUT} seconds') from None
    if done.returncode:
        raise CredentialsError(f'the command ended with status {done.returncode}')
    found = parsed_json(done.stdout)
    if found.get('Version') != 1:
        raise lasting('the command must tell "Version": 1')
    return fetched_of(found, 'SessionToken')


# --------------------------------------------------------------------------------------- botocore


def from_botocore(session: Any) -> Credentials:
    """Credentials as a session of botocore or boto3 finds them, such as those of `aws sso login`.

    botocore blocks when it fetches, so it is called in a thread, once a minute. It decides itself
    when it renews, and `forget` only asks it again.

    - `session`: has `get_credentials()`. It is used by one thread at a time.
    """
    if not callable(getattr(session, 'get_credentials', None)):
        raise TypeError('session must have get_credentials, as those of botocore and boto3 do, '
                        f'got {type(session).__name__}')

    def frozen() -> Any:
        found = session.get_credentials()
        return None if found is None else found.get_frozen_credentials()

    async def fetch() -> Fetched:
        found = await asyncio.to_thread(frozen)
        if found is None:
            raise NotConfigured('it finds none')
        return Fetched(keys_of(found.access_key, found.secret_key, found.token),
                       None, ASK_BOTOCORE_AFTER)

    return Credentials('botocore', fetch)


# -------------------------------------------------------------------------- what the sources share


@contextlib.contextmanager
def told_as(name: str, is_chosen: bool = False) -> Iterator[None]:
    """Whatever fails within is a `CredentialsError` whose message begins with this name.

    - `is_chosen`: this source is the one to be used, so that a chain must not ask the next one.
    """
    try:
        yield
    except CredentialsError as error:
        kind = CredentialsError if is_chosen else type(error)
        raise kind(f'{name}: {error}', error.is_lasting) from error.__cause__
    except Exception as error:
        is_refused = getattr(error, 'phase', None) == Phase.REFUSED
        raise CredentialsError(f'{name}: {described(error)}', is_refused) from error


def described(error: Exception) -> str:
    return f'{type(error).__name__}: {error}'


def lasting(message: str) -> CredentialsError:
    return CredentialsError(message, is_lasting=True)


def refusal(who: str, code: bytes, reason: object = None, message: object = None,
            ) -> CredentialsError:
    """The error of an answer with this status code, and with what it says of itself."""
    said = ', '.join(repr(each[:MAX_SHOWN]) for each in (reason, message)
                     if each and isinstance(each, str))
    is_lasting = code[:1] == b'4' and code != b'429' and reason not in PASSING
    return CredentialsError(f'{who} answered {code.decode()}{said and ": " + said}', is_lasting)


async def answer(request: Request, method: bytes, url: str, headers: Headers, content: bytes = b'',
                 timeouts: Mapping[str, float] | None = None) -> tuple[bytes, bytes]:
    """The status code and the content of the answer to a request."""
    kwargs: dict[str, Any] = {'body': streamed(content)} if content else {}
    if timeouts is not None:
        kwargs['timeouts'] = timeouts
    code, _, body = await request(method, url, headers=headers, **kwargs)
    received = b''
    try:
        async for chunk in body:
            received += chunk
            if len(received) > MAX_ANSWER:
                raise CredentialsError(f'an answer has more than {MAX_ANSWER} bytes')
    finally:
        await body.aclose()
    return code, received


def parsed_json(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        # The exception has the content.
        found = None
    if not isinstance(found, dict):
        raise CredentialsError(f'what came is no object of JSON, in {len(content)} bytes')
    return found


def told_in_json(content: bytes) -> tuple[Any, Any]:
    """The code and the message of an error of an endpoint of a container."""
    with contextlib.suppress(CredentialsError):
        found = parsed_json(content)
        return found.get('code'), found.get('message')
    return None, None


def fetched_of(found: Mapping[str, Any], token: str = 'Token') -> Fetched:
    for name in ('AccessKeyId', 'SecretAccessKey'):
        if not found.get(name):
            raise CredentialsError(f'what came has no {name}')
    return Fetched(keys_of(found['AccessKeyId'], found['SecretAccessKey'], found.get(token)),
                   time_of(found.get('Expiration')), math.inf)


def keys_of(access_key_id: Any, secret_access_key: Any, token: Any) -> Keys:
    for name, value in (('access key ID', access_key_id), ('secret access key', secret_access_key),
                        ('session token', token or '-')):
        if not isinstance(value, str) or not value or not is_field_value(value):
            raise lasting(f'the {name} must be a str of printable ASCII that is not empty')
    return access_key_id, secret_access_key, (
        ((b'x-amz-security-token', token.encode()),) if token else ())


def is_field_value(text: str) -> bool:
    return text.isascii() and text.isprintable()


def time_of(text: Any) -> float | None:
    """A time of ISO 8601, in seconds since 1970. It is of UTC, if it does not tell."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise lasting(f'{str(text)[:MAX_SHOWN]!r} is no time at which credentials end') from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def text_of(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec='seconds')


def text_in(path: str, name: str) -> str:
    """The one line of a file, such as a token. Raises if there is none, or if it is no ASCII."""
    try:
        with open(os.path.expanduser(path), encoding='ascii') as file:
            text = file.read(MAX_ANSWER).strip()
    except UnicodeDecodeError:
        raise lasting(f'{name} {path} must be ASCII') from None
    except OSError as error:
        # It may be written just now.
        raise CredentialsError(f'{name} {path} can not be read: {described(error)}') from error
    if not text:
        raise CredentialsError(f'{name} {path} is empty')
    return text


def checked(function: Any) -> Any:
    if not callable(function):
        raise TypeError(f'a coroutine function was expected, got {type(function).__name__}')
    return function


def checked_text(**given: str | None) -> None:
    for name, value in given.items():
        if value is not None and (not isinstance(value, str) or not value):
            raise TypeError(f'{name} must be a str that is not empty, got {value!r}')
