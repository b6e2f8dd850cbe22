"""Tests of lowhaio_aws_sigv4_unsigned_payload: what it adds to lowhaio_aws_sigv4."""

import asyncio
import pathlib
from datetime import datetime
from urllib.parse import parse_qsl, unquote

import pytest

import lowhaio_aws_sigv4
import lowhaio_aws_sigv4_unsigned_payload
from lowhaio import HttpConnectionError, streamed
from lowhaio_aws_sigv4_unsigned_payload import signed
from tests.harness import (
    OK,
    Answering,
    Server,
    internet,
    on_loops,
    pool,
    python_blocks,
    response,
    run_block,
    value,
)


async def credentials():
    return 'AKID', 'secret', ()


def check_signature(head: bytes) -> None:
    """Check the signature with the other layer, whose own tests check that."""
    line, *lines = head.removesuffix(b'\r\n\r\n').split(b'\r\n')
    method, target, _ = line.decode().split(' ')
    path, _, query = target.partition('?')
    date = datetime.strptime(value(head, b'x-amz-date').decode() + '+0000', '%Y%m%dT%H%M%SZ%z')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lowhaio_aws_sigv4, 'time', date.timestamp)
        fields = lowhaio_aws_sigv4.aws_sigv4_headers(
            'AKID', 'secret', tuple(tuple(line.split(b': ', 1)) for line in lines), 's3',
            'eu-west-2', '', method, unquote(path), parse_qsl(query, keep_blank_values=True),
            'UNSIGNED-PAYLOAD')
    assert value(head, b'x-amz-content-sha256') == b'UNSIGNED-PAYLOAD'
    assert value(head, b'authorization') == dict(fields)[b'authorization']


@on_loops
async def test_the_body_is_sent_as_it_comes():
    async def body():
        yield b'a'
        await arrived.wait()
        yield b'b'

    async def script(peer):
        heads.append(await peer.read_head())
        assert await peer.read(1) == b'a'
        arrived.set()
        assert await peer.read(1) == b'b'
        await peer.send(OK)

    arrived, heads = asyncio.Event(), []
    async with Server(script) as server, pool() as request:
        code, _, _ = await signed(request, credentials, 's3', 'eu-west-2')(
            b'PUT', server.origin + '/a b?c', params={'d': '+'},
            headers=((b'content-length', b'2'),), body=body)
    assert code == b'200'
    check_signature(heads[0])


@on_loops
async def test_a_target_is_sent_as_it_is_and_signed_as_a_server_reads_it():
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        await signed(request, credentials, 's3', 'eu-west-2')(
            b'PUT', server.url, target=b'/a[b]|{c}?d=[e]', body=streamed(b'abc'))
    [head] = script.heads
    assert head.startswith(b'PUT /a[b]|{c}?d=[e] HTTP/1.1\r\n')
    check_signature(head.replace(b'/a[b]|{c}?d=[e]', b'/a%5Bb%5D%7C%7Bc%7D?d=%5Be%5D', 1))


@on_loops
async def test_a_chunked_body_is_sent_as_it_is():
    script = Answering(OK)
    chunked = b'3\r\nabc\r\n0\r\n\r\n'
    async with Server(script) as server, pool() as request:
        await signed(request, credentials, 's3', 'eu-west-2')(
            b'PUT', server.url, headers=((b'transfer-encoding', b'chunked'),),
            body=streamed(chunked))
    assert script.bodies == [chunked]
    check_signature(script.heads[0])


@on_loops
async def test_the_arguments_of_the_body_are_passed_on():
    async def body(*args, **kwargs):
        yield b'%d%d' % (*args, *kwargs.values())

    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        await signed(request, credentials, 's3', 'eu-west-2')(
            b'PUT', server.url, headers=((b'content-length', b'2'),),
            body=body, body_args=(1,), body_kwargs={'b': 2})
    assert script.bodies == [b'12']


@on_loops
async def test_a_body_without_framing_is_refused():
    async def body():
        yield b'abc'

    async with Server(Answering(OK)) as server, pool() as request:
        with pytest.raises(HttpConnectionError, match='no content-length'):
            await signed(request, credentials, 's3', 'eu-west-2')(b'PUT', server.url, body=body)


@on_loops
async def test_the_length_of_what_is_in_memory_is_known():
    script = Answering(OK)
    async with Server(script) as server, pool() as request:
        send = signed(request, credentials, 's3', 'eu-west-2')
        await send(b'PUT', server.url, body=streamed(b'abc'))
        await send(b'PUT', server.url)
        await send(b'GET', server.url)
    assert script.bodies == [b'abc', b'', b'']
    assert [value(head, b'content-length') for head in script.heads] == [b'3', b'0', None]
    for head in script.heads:
        check_signature(head)


@on_loops
async def test_credentials_are_bound_to_an_origin():
    script = Answering(OK)
    async with Server(script) as server, Server(script) as other, pool() as request:
        for origin, heads in ((None, 1), (other.origin, 1), ((server.origin, other.origin), 2),
                              ('*', 2)):
            script.heads.clear()
            send = signed(request, credentials, 's3', 'eu-west-2', origin=origin)
            for url in (server.url, other.url):
                await send(b'GET', url)
            assert sum(b'authorization' in head for head in script.heads) == heads


def test_bad_arguments_fail_at_once():
    with pytest.raises(TypeError, match='credentials must be'):
        signed(print, None, 's3', 'eu-west-2')


def test_what_needs_no_body_is_the_same():
    assert lowhaio_aws_sigv4_unsigned_payload.object_url is lowhaio_aws_sigv4.object_url
    assert (lowhaio_aws_sigv4_unsigned_payload.aws_sigv4_headers
            is lowhaio_aws_sigv4.aws_sigv4_headers)


def test_the_example_of_the_readme(capsys):
    script = Answering(response(200))
    with internet(script, '*.s3.eu-west-2.amazonaws.com'):
        for block in python_blocks(pathlib.Path(__file__).with_name('README.md')):
            run_block(block)
    assert capsys.readouterr().out == "200 b''\n"
    assert script.lines == ['PUT /lines.txt']
    assert len(script.bodies[0]) == 9000
    assert value(script.heads[0], b'x-amz-content-sha256') == b'UNSIGNED-PAYLOAD'
