"""lowhaio_aws_sigv4, lowhaio_aws_sigv4_streaming, lowhaio_aws_credentials, and
lowhaio_download, with servers of S3 and other services of AWS that others have written."""

import html
import json
import os
import pathlib
import re
import urllib.parse

import boto3
import pytest
import s3_servers

from lowhaio import buffered, streamed
from lowhaio_aws_credentials import (
    CredentialsError,
    assumed_role,
    from_botocore,
    from_instance,
    from_profile,
    from_web_identity,
)
from lowhaio_aws_sigv4 import object_url, signed
from lowhaio_aws_sigv4_streaming import CheckedBody, available_checksums, checked
from lowhaio_aws_sigv4_streaming import signed as streaming
from lowhaio_download import download
from tests.harness import on_loops, pool

LAYER = pathlib.Path(__file__).parents[2] / 'layers' / 'aws_sigv4'
KEYS = json.loads((LAYER / 'keys.json').read_text(encoding='utf-8'))


async def credentials():
    return 'AKID', 'secret', ()


@pytest.fixture
def rclone(s3_server):
    """The URL of a server that verifies signatures."""
    return s3_server('rclone').url


@pytest.fixture
def radosgw(s3_server):
    """The URL of another one."""
    return s3_server('radosgw').url


@pytest.fixture
def moto(s3_server):
    return s3_server('moto').url


async def wrong_credentials():
    return 'AKID', 'wrong', ()


@on_loops
async def test_keys_that_are_no_paths_of_files_reach_a_server_as_they_are(rclone):
    """It says what is wrong with them, and does not take another file."""
    async with pool() as request:
        signed_request = signed(request, credentials, 's3', 'us-east-1')
        await make_bucket(signed_request, rclone)
        await signed_request(b'PUT', object_url(f'{rclone}/bucket', 'b'), body=streamed(b'mine'))
        for key in ('a/../b', './b', '/b', '//b', '../bucket/b', 'a/./../b'):
            for method in b'PUT', b'GET':
                code, _, body = await signed_request(method, object_url(f'{rclone}/bucket', key))
                assert (code, b'InvalidArgument' in await buffered(body)) == (b'400', True)


async def make_bucket(request, root):
    code, _, body = await request(b'PUT', f'{root}/bucket')
    assert code in (b'200', b'409'), await buffered(body)


async def puts_gets_and_lists(request, root, extra, keys=KEYS['like files']):
    for key in keys:
        url = object_url(f'{root}/bucket', key)
        code, _, body = await request(b'PUT', url, body=streamed(key.encode() * 3))
        assert (code, await buffered(body)) == (b'200', b'')
    # None has taken the place of another.
    for key in keys:
        url = object_url(f'{root}/bucket', key)
        code, _, body = await request(b'GET', url, params=extra)
        assert (code, await buffered(body)) == (b'200', key.encode() * 3)
        code, _, body = await request(
            b'GET', f'{root}/bucket',
            params=[('list-type', '2'), ('prefix', key), ('encoding-type', 'url')])
        listing = (await buffered(body)).decode()
        assert code == b'200'
        listed = re.findall('<Contents>.*?<Key>(.*?)</Key>', listing, re.DOTALL)
        assert key in (urllib.parse.unquote_plus(html.unescape(each)) for each in listed)
        code, _, body = await request(b'DELETE', url)
        assert (code, await buffered(body)) == (b'204', b'')


# What these two do not do right is left out: rclone's does not sort the values of a name, and
# radosgw knows but one of them.
@pytest.fixture(params=[('rclone', {'b': ['', '+'], 'a': 'x y'}),
                        ('radosgw', {'b': '+', 'é': '', 'a': 'x y'})])
def verifying(request):
    """The URL of a server that verifies signatures, and params."""
    server, params = request.param
    return request.getfixturevalue(server), params


@pytest.mark.parametrize('body_hash', [None, 'UNSIGNED-PAYLOAD'])
@on_loops
async def test_servers_that_verify_signatures_accept_them(verifying, body_hash):
    async with pool() as request:
        signed_request = signed(request, credentials, 's3', 'us-east-1', body_hash=body_hash)
        await make_bucket(signed_request, verifying[0])
        await puts_gets_and_lists(signed_request, *verifying)


@on_loops
async def test_servers_that_verify_signatures_do_so(verifying):
    url, params = verifying
    async with pool() as request:
        await make_bucket(signed(request, credentials, 's3', 'us-east-1'), url)
        code, _, body = await signed(request, wrong_credentials, 's3', 'us-east-1')(
            b'GET', f'{url}/bucket', params)
        assert code == b'403'
        assert b'SignatureDoesNotMatch' in await buffered(body)


@on_loops
async def test_servers_that_verify_signatures_accept_targets_as_they_are_given(verifying):
    url, _ = verifying
    async with pool() as request:
        signed_request = signed(request, credentials, 's3', 'us-east-1')
        await make_bucket(signed_request, url)
        for key in ('a[b]|{c}', "a'(b)*!", 'a+b=c@d:', '%5bé'):
            target = b'/bucket/' + key.encode()
            code, _, body = await signed_request(
                b'PUT', url, target=target, body=streamed(key.encode()))
            assert (code, await buffered(body)) == (b'200', b'')
            object_of = object_url(f'{url}/bucket', urllib.parse.unquote(key))
            code, _, body = await signed_request(b'GET', object_of)
            assert (code, await buffered(body)) == (b'200', key.encode())
            code, _, body = await signed_request(
                b'GET', url, target=b'/bucket?list-type=2&prefix=' + key.replace(
                    '+', '%2b').encode())
            assert (code, (await buffered(body)).count(b'<Contents>')) == (b'200', 1)
            code, _, body = await signed_request(b'DELETE', url, target=target)
            assert (code, await buffered(body)) == (b'204', b'')


@on_loops
async def test_moto(moto):
    async with pool() as request:
        signed_request = signed(request, credentials, 's3', 'us-east-1')
        await make_bucket(signed_request, moto)
        await puts_gets_and_lists(signed_request, moto, {'a': 'x y'},
                                  KEYS['like files'] + KEYS['unlike files'])


# --------------------------------------------------------------------------------- aws-chunked


FORMS = {
    'unsigned': {},
    'signed': {'signed_payload': True},
    'signed without a checksum': {'signed_payload': True, 'checksum': None},
}
# Those that a server understands, and whether it sends the checksums back: the others keep the
# encoded body as the object, or refuse it. docs/peers/s3.md has all of them.
UNDERSTOOD = {
    'SeaweedFS': (('unsigned', 'signed', 'signed without a checksum'), True),
    'moto': (('unsigned', 'signed', 'signed without a checksum'), False),
    'rclone': (('unsigned', 'signed without a checksum'), False),
    'radosgw': (('signed without a checksum',), False),
}


@pytest.mark.parametrize('name, form', [
    (name, form) for name, (forms, _) in UNDERSTOOD.items() for form in forms])
@on_loops
async def test_bodies_that_are_streamed_and_downloads_that_are_checked(s3_server, name, form):
    async def put(content, **options):
        code, _, body = await send(b'PUT', f'{server.url}/bucket/streamed', body=streamed(content),
                                   **FORMS[form], **options)
        return code, await buffered(body)

    server = s3_server(name)
    sends_checksums = UNDERSTOOD[name][1] and form != 'signed without a checksum'
    async with pool() as request:
        send = checked(streaming(request, server.credentials, 's3', 'us-east-1'))
        await make_bucket(send, server.url)
        # radosgw refuses an empty one.
        for length in (0, 1, 65536, 65537, 200_000)[name == 'radosgw':]:
            content = os.urandom(length)
            assert await put(content) == (b'200', b'')
            _, _, body = await send(b'GET', f'{server.url}/bucket/streamed')
            assert isinstance(body, CheckedBody) == sends_checksums
            assert await buffered(body) == content
        for algorithm in available_checksums() if sends_checksums else ():
            options = {**FORMS[form], 'checksum': algorithm}
            code, _, _ = await send(b'PUT', f'{server.url}/bucket/streamed', **options,
                                    body=streamed(b'abc'))
            assert code == b'200'
            _, fields, body = await send(b'GET', f'{server.url}/bucket/streamed')
            assert f'x-amz-checksum-{algorithm}'.encode() in dict(fields)
            assert isinstance(body, CheckedBody)
            assert await buffered(body) == b'abc'


@pytest.mark.parametrize('form, code', [('unsigned', b'400'), ('signed', b'500'),
                                        ('signed without a checksum', b'500')])
@on_loops
async def test_a_body_that_is_damaged_on_its_way_is_refused(s3_server, form, code):
    def damaging(request):
        async def damaging_request(method, url, *, body, **kwargs):
            async def damaged():
                async for chunk in body():
                    yield chunk.replace(b'abc', b'abd', 1)

            return await request(method, url, body=damaged, **kwargs)

        return damaging_request

    server = s3_server('SeaweedFS')
    async with pool() as request:
        await make_bucket(streaming(request, server.credentials, 's3', 'us-east-1'), server.url)
        send = streaming(damaging(request), server.credentials, 's3', 'us-east-1', **FORMS[form])
        found, _, body = await send(b'PUT', f'{server.url}/bucket/damaged',
                                    body=streamed(b'abc' * 40_000))
        await buffered(body)
        assert found == code


# --------------------------------------------------------------------------------- credentials


ROLE = 'arn:aws:iam::123456789012:role/path/R'


async def caller(request, credentials, moto):
    """Who moto's STS says has signed."""
    code, _, body = await signed(request, credentials, 'sts', 'eu-west-2')(
        b'POST', moto + '/', headers=((b'content-type', b'application/x-www-form-urlencoded'),),
        body=streamed(b'Action=GetCallerIdentity&Version=2011-06-15'))
    content = (await buffered(body)).decode()
    assert code == b'200', content
    return re.search('<Arn>(.*)</Arn>', content)[1]


@on_loops
async def test_roles_of_moto_sign(moto, tmp_path, monkeypatch):
    monkeypatch.setenv('AWS_ENDPOINT_URL_STS', moto)
    monkeypatch.setenv('AWS_REGION', 'eu-west-2')
    monkeypatch.setenv('AWS_CONFIG_FILE', str(tmp_path / 'config'))
    monkeypatch.setenv('AWS_SHARED_CREDENTIALS_FILE', str(tmp_path / 'credentials'))
    (tmp_path / 'token').write_text('token\n')
    (tmp_path / 'config').write_text(
        f'[default]\nrole_arn = {ROLE}\nrole_session_name = c\nsource_profile = base\n'
        '[profile base]\naws_access_key_id = AKID\naws_secret_access_key = secret\n')
    async with pool() as request:
        role = assumed_role(request, credentials, ROLE, session_name='a', duration=900)
        for each, name in (
                (role, 'a'),
                (from_web_identity(request, role_arn=ROLE, token_file=str(tmp_path / 'token'),
                                   session_name='b'), 'b'),
                (from_profile(request), 'c'),
                (assumed_role(request, role, ROLE, session_name='d'), 'd')):
            arn = await caller(request, each, moto)
            assert arn == f'arn:aws:sts::123456789012:assumed-role/R/{name}'
            # It tells when they end.
            assert ': good until ' in repr(each)
        signed_request = signed(request, role, 's3', 'us-east-1')
        await make_bucket(signed_request, moto)
        await puts_gets_and_lists(signed_request, moto, (), KEYS['like files'][:3])


@on_loops
async def test_what_moto_refuses(moto):
    async with pool() as request:
        with pytest.raises(CredentialsError) as caught:
            await assumed_role(request, credentials, ROLE, session_name='x' * 100,
                               region='eu-west-2', endpoint=moto)()
    assert str(caught.value).startswith(f"the role {ROLE}: STS answered 400: 'ValidationError', ")
    assert caught.value.is_lasting


@on_loops
async def test_the_metadata_service_of_moto(moto, monkeypatch):
    monkeypatch.delenv('AWS_EC2_METADATA_DISABLED', raising=False)
    async with pool() as request:
        assert await from_instance(request, endpoint=moto)() == (
            'test-key', 'test-secret-key', ((b'x-amz-security-token', b'test-session-token'),))


@on_loops
async def test_a_session_of_boto3(moto):
    session = boto3.Session('AKID', 'secret', 'token', region_name='eu-west-2')
    found = from_botocore(session)
    assert await found() == ('AKID', 'secret', ((b'x-amz-security-token', b'token'),))


# ----------------------------------------------------------------------------------- downloads


@pytest.fixture(scope='module')
def rclone_without_signatures(tmp_path_factory):
    """The URL of a server that sends ranges with 200, and does not know if-range."""
    with s3_servers.rclone(tmp_path_factory.mktemp('rclone')) as server:
        yield server.url


class Enough(Exception):
    """What ends a download before its end."""


async def begin(request, url, path, length):
    """Download so many bytes, and end."""
    def stop(done, total):
        if done >= length:
            raise Enough

    async def in_pieces(*args, **kwargs):
        code, headers, body = await request(*args, **kwargs)
        return code, headers, Pieces(body, length)

    with pytest.raises(Enough):
        await download(in_pieces, url, path, on_progress=stop)


class Pieces:
    """A body of which the first chunk has so many bytes."""

    def __init__(self, body, length):
        self.body = body
        self.length = length

    def __aiter__(self):
        return self

    async def __anext__(self):
        chunk = await anext(self.body)
        return chunk[:self.length]

    async def aclose(self):
        await self.body.aclose()


@on_loops
async def test_a_download_from_rclone(rclone_without_signatures, tmp_path):
    async def put(url, content=b''):
        code, _, body = await request(
            b'PUT', url, body=streamed(content),
            headers=((b'content-length', b'%d' % len(content)),))
        await buffered(body)
        assert code in (b'200', b'409')

    path, part = tmp_path / 'file', tmp_path / 'file.part'
    url = f'{rclone_without_signatures}/bucket/key'
    old, new = os.urandom(1000), os.urandom(1000)
    async with pool() as request:
        await put(f'{rclone_without_signatures}/bucket')
        # Of the one before: some of it, all of it; and then of this one.
        for there, whole_one, resumed_from in (
                (500, old, 500), (1000, old, 1000), (500, new, 0), (1000, new, 0),
                (1000, new[:10], 0)):
            await put(url, old)
            await begin(request, url, path, there)
            assert part.read_bytes() == old[:there]
            await put(url, whole_one)
            done = await download(request, url, path, pauses=(0, 0))
            assert path.read_bytes() == whole_one
            assert done.resumed_from == resumed_from
