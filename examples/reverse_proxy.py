"""A streaming reverse proxy: an ASGI application, served by uvicorn.

    python examples/reverse_proxy.py http://127.0.0.1:8000
    python examples/reverse_proxy.py https://www.example.com --port 8080 --preserve-host

Bodies are passed on as they come, in both directions and no faster than they are received, so
memory does not grow with them. When the client goes away, the request to the upstream server ends.
If the upstream server breaks off in the middle of a body, so does the response to the client. A
response that comes while the request is being sent is passed on at once.

A request that fails is answered with 504 if it took too long, and with 502 otherwise. Upgrades,
such as to WebSockets, are not passed on; nor are trailers, unless the ASGI server can send them.
"""
import argparse
import asyncio
import contextlib
import logging
import string
from email.utils import formatdate
from urllib.parse import quote, urlsplit

import uvicorn
from lowhaio_chunked import chunked
from lowhaio_retry import if_idempotent, if_stale, retry

from lowhaio import HttpDataError, HttpError, Pool, empty_async_iterator

LOGGER = logging.getLogger('uvicorn.error')
VIA = (b'via', b'1.1 lowhaio')

# Fields that are for one hop only: those of RFC 9110 7.6.1, and those about a proxy.
HOP_BY_HOP = frozenset((
    b'connection', b'keep-alive', b'proxy-authenticate', b'proxy-authorization',
    b'proxy-connection', b'te', b'trailer', b'transfer-encoding', b'upgrade'))

# Fields that this proxy writes itself, because what a client says about itself cannot be trusted.
# If there is a proxy in front of this one, FORWARDED_ALLOW_IPS makes uvicorn take the scheme and
# the address from it.
FORWARDED = frozenset((
    b'forwarded', b'x-forwarded-for', b'x-forwarded-host', b'x-forwarded-proto'))


class ClientGone(Exception):
    """The client has gone, so nobody waits for the response any more."""


class ReverseProxy:
    """The ASGI application. `upstream` is an origin, which may be followed by a path."""

    def __init__(self, upstream, preserve_host=False, timeout=60):
        self.upstream = upstream.rstrip('/')
        self.preserve_host = preserve_host
        self.request, self.close = Pool(socket_timeout=timeout)
        # A server may close a connection at the very moment when it is used again.
        self.request_without_body = retry(
            self.request, ((HttpDataError, (0,)),),
            should_retry=lambda *args: if_stale(*args) and if_idempotent(*args))

    async def __call__(self, scope, receive, send):
        if scope['type'] == 'lifespan':
            await self.live(receive, send)
        elif scope['type'] == 'http':
            await self.serve(scope, Client(scope, receive), send)
        else:
            raise NotImplementedError(f'a reverse proxy of {scope["type"]}')

    async def live(self, receive, send):
        while (await receive())['type'] != 'lifespan.shutdown':
            await send({'type': 'lifespan.startup.complete'})
        await self.close()
        await send({'type': 'lifespan.shutdown.complete'})

    async def serve(self, scope, client, send):
        """Pass on the request and its response, as long as the client is there."""
        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(client.watch())
                await self.pass_on(scope, client, send)
                watching.cancel()
        except* ClientGone:
            pass

    async def pass_on(self, scope, client, send):
        target = scope['raw_path']
        if not target.startswith(b'/'):
            # Appended to the origin, such a target would turn it into another one.
            await answer(send, 400, 'The target of a request must begin with a slash')
            return
        if scope['query_string']:
            target += b'?' + scope['query_string']
        body = client.body if client.has_body else empty_async_iterator
        request = self.request if client.has_body else self.request_without_body
        try:
            code, headers, body = await request(
                scope['method'].encode(), self.upstream + quote(target, safe=string.punctuation),
                headers=self.request_headers(scope, client),
                body=chunked(body) if client.is_chunked else body)
        except HttpError as error:
            if isinstance(error.__cause__, ClientGone):
                raise ClientGone from error
            LOGGER.error('%s: %s', type(error).__name__, error)
            if isinstance(error.__cause__, TimeoutError):
                await answer(send, 504, 'The upstream server took too long')
            else:
                await answer(send, 502, 'The upstream server can not be asked')
            return
        if not client.was_asked:
            client.body_ended.set()
        try:
            async with contextlib.aclosing(body):
                # If this raises, the ASGI server closes the connection before the response has
                # ended. So the client knows that the response is not whole.
                await respond(scope, code, headers, body, send)
        except HttpError as error:
            # The response may have come while the client was still sending.
            if isinstance(error.__cause__, ClientGone):
                raise ClientGone from error
            raise

    def request_headers(self, scope, client):
        headers = [field for field in end_to_end(scope['headers'])
                   if field[0] not in FORWARDED and field[0] not in (b'host', b'content-length')]
        for name, host in scope['headers']:
            if name == b'host':
                headers.append((b'x-forwarded-host', host))
                if self.preserve_host:
                    headers.append((b'host', host))
        if client.is_chunked:
            headers.append((b'transfer-encoding', b'chunked'))
        elif client.length is not None:
            headers.append((b'content-length', client.length))
        if scope['client']:
            headers.append((b'x-forwarded-for', scope['client'][0].encode()))
        return (*headers, (b'x-forwarded-proto', scope['scheme'].encode()), VIA)


class Client:
    """What comes from the client: first the body of its request, and then that it has gone."""

    def __init__(self, scope, receive):
        headers = dict(scope['headers'])
        self.length = headers.get(b'content-length')
        # In HTTP/2, a body needs neither of the two fields.
        self.is_chunked = b'transfer-encoding' in headers or (
            self.length is None and scope['http_version'] >= '2')
        self.has_body = self.is_chunked or self.length not in (None, b'0')
        self.receive = receive
        self.was_asked = False
        self.body_ended = asyncio.Event()
        if not self.has_body:
            self.body_ended.set()

    async def body(self):
        # The ASGI server sends 100 Continue when the body is first asked for. Since `expect` is
        # passed on, that is when the upstream server wants the body.
        self.was_asked = is_more = True
        try:
            while is_more:
                message = await self.receive()
                if message['type'] == 'http.disconnect':
                    raise ClientGone
                yield message.get('body', b'')
                is_more = message.get('more_body', False)
        finally:
            self.body_ended.set()

    async def watch(self):
        """Wait until the client has gone. What it sends after a response has ended the sending is
        dropped."""
        await self.body_ended.wait()
        while (await self.receive())['type'] != 'http.disconnect':
            pass
        raise ClientGone


def end_to_end(headers):
    """The headers without the fields that are meant for one hop only."""
    named = {name.strip().lower() for field, value in headers if field == b'connection'
             for name in value.split(b',')}
    return [field for field in headers if field[0] not in HOP_BY_HOP | named]


async def respond(scope, code, headers, body, send):
    fields = [field for field in end_to_end(headers) if field[0] != b'content-length']
    names = {name for name, _ in headers}
    # ASGI servers check a length against the content, which a 204 and a 304 do not have. Beside
    # chunks, a length has no meaning (RFC 9112 6.3). Several equal lengths count as one.
    if code not in (b'204', b'304') and b'transfer-encoding' not in names:
        fields += [field for field in headers if field[0] == b'content-length'][:1]
    if b'date' not in names:
        fields.append((b'date', formatdate(usegmt=True).encode()))
    may_have_trailers = 'http.response.trailers' in (scope.get('extensions') or {})
    await send({'type': 'http.response.start', 'status': int(code), 'headers': [*fields, VIA],
                'trailers': may_have_trailers})
    async for chunk in body:
        await send({'type': 'http.response.body', 'body': chunk, 'more_body': True})
    await send({'type': 'http.response.body', 'body': b'', 'more_body': False})
    if may_have_trailers:
        await send({'type': 'http.response.trailers', 'headers': body.trailers})


async def answer(send, code, text):
    """Send a response of the proxy itself."""
    headers = ((b'content-type', b'text/plain'), (b'content-length', b'%d' % len(text)),
               (b'date', formatdate(usegmt=True).encode()))
    await send({'type': 'http.response.start', 'status': code, 'headers': headers})
    await send({'type': 'http.response.body', 'body': text.encode()})


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('upstream', help='URL of the server that is asked')
    parser.add_argument('--host', default='127.0.0.1', help='to listen at (default: 127.0.0.1)')
    parser.add_argument('--port', type=int, default=8080, help='to listen at (default: 8080)')
    parser.add_argument('--preserve-host', action='store_true',
                        help='pass on the `host` of the client, in place of that of the URL')
    parser.add_argument('--timeout', type=float, default=60, metavar='SECONDS',
                        help='for each wait for the upstream server (default: 60)')
    args = parser.parse_args()
    url = urlsplit(args.upstream)
    if url.scheme not in ('http', 'https') or not url.hostname or url.query or url.fragment:
        parser.error('upstream must be a URL such as http://127.0.0.1:8000')

    # uvicorn must not add fields to those of the upstream server, and clients that never end must
    # not keep it from ending.
    uvicorn.run(
        ReverseProxy(args.upstream, args.preserve_host, args.timeout), host=args.host,
        port=args.port, ws='none', lifespan='on', server_header=False, date_header=False,
        timeout_graceful_shutdown=5)


if __name__ == '__main__':
    main()
