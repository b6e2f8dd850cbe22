"""The applications that test_interop.py runs on other people's servers

One set of answers, dressed as an ASGI, a WSGI and an aiohttp application. It is a module of its
own because the servers import it, and should not import the test's dependencies.

aiohttp, uvicorn and waitress have no command that serves TCP well on an inherited socket, so for
these the module is itself the command, which imports only the server it is to run:

    python -m interop_apps (aiohttp|uvicorn-h11|uvicorn-httptools|waitress) FD [CERTIFICATE KEY]
"""

import hashlib
import importlib
import random
import socket
import ssl
import sys

# Random, so that a lost, repeated or swapped piece shows; seeded, so that both ends have the same
LARGE = random.Random(0).randbytes(8 * 1024 * 1024)
PIECE = 64 * 1024


def get_answer(method, path, body):
    """The status, header fields and pieces of the body for a request, whatever the server"""
    pieces = {
        '/hello': [b'hello'],
        '/echo': [body],
        '/sha256': [hashlib.sha256(body).hexdigest().encode()],
        '/large': [LARGE[i:i + PIECE] for i in range(0, len(LARGE), PIECE)],
        '/close': [b'clo', b'sed'],
    }
    name, _, option = path.partition('-')
    status = int(option) if name == '/status' else 200
    headers = [('x-repeated', 'one'), ('x-other', 'a, b'), ('x-repeated', 'two')]
    if status != 200:
        return status, [*headers, ('etag', '"some-tag"')], []

    headers.append(('content-type', 'application/octet-stream'))
    if option != 'chunked':
        headers.append(('content-length', str(sum(len(piece) for piece in pieces[name]))))
    if name == '/close':
        headers.append(('connection', 'close'))
    return status, headers, [] if method == 'HEAD' else pieces[name]


async def asgi_app(scope, receive, send):
    if scope['type'] != 'http':
        # Servers differ in what they do with an exception here; all let an application return
        return

    body, more_body = bytearray(), True
    while more_body:
        message = await receive()
        body += message.get('body', b'')
        more_body = message.get('more_body', False)

    status, headers, pieces = get_answer(scope['method'], scope['path'], bytes(body))
    headers.append(('x-client', '{}:{}'.format(*scope['client'])))
    await send({
        'type': 'http.response.start',
        'status': status,
        'headers': [(name.encode(), value.encode()) for name, value in headers],
    })
    for piece in pieces:
        await send({'type': 'http.response.body', 'body': piece, 'more_body': True})
    await send({'type': 'http.response.body', 'body': b'', 'more_body': False})


def wsgi_app(environ, start_response):
    body = environ['wsgi.input'].read()
    path = environ['PATH_INFO']
    status, headers, pieces = get_answer(environ['REQUEST_METHOD'], path, body)
    if path == '/close':
        # A WSGI application is not allowed to send `connection`. What makes waitress close is a
        # body without a content-length
        headers = [field for field in headers if field[0] not in ('connection', 'content-length')]
    headers.append(('x-client', '{REMOTE_ADDR}:{REMOTE_PORT}'.format(**environ)))
    start_response(f'{status} Some reason', headers)
    return pieces


async def aiohttp_handler(request):
    web = importlib.import_module('aiohttp.web')

    status, headers, pieces = get_answer(request.method, request.path, await request.read())
    headers.append(('x-client', '{}:{}'.format(*request.transport.get_extra_info('peername'))))
    response = web.StreamResponse(status=status, headers=headers)
    if ('connection', 'close') in headers:
        response.force_close()
    await response.prepare(request)
    for piece in pieces:
        await response.write(piece)
    return response


def serve_aiohttp(sock, certificate_and_key):
    web = importlib.import_module('aiohttp.web')

    context = None
    if certificate_and_key:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*certificate_and_key)
    app = web.Application(client_max_size=2 * len(LARGE))
    app.router.add_route('*', '/{path:.*}', aiohttp_handler)
    web.run_app(app, sock=sock, ssl_context=context)


def serve_uvicorn(sock, certificate_and_key, **options):
    uvicorn = importlib.import_module('uvicorn')

    certificate, key = certificate_and_key or (None, None)
    # Not --fd: it takes the socket for a Unix one, so TCP_NODELAY is not set, and each response
    # waits for the client's delayed acknowledgement
    uvicorn.Server(uvicorn.Config(
        asgi_app, lifespan='off', ssl_certfile=certificate, ssl_keyfile=key, **options,
    )).run(sockets=[sock])


def serve_waitress(sock, _):
    importlib.import_module('waitress').serve(wsgi_app, sockets=[sock])


def main(name, fd, *certificate_and_key):
    sock = socket.socket(fileno=int(fd))
    if name == 'aiohttp':
        serve_aiohttp(sock, certificate_and_key)
    elif name == 'uvicorn-h11':
        serve_uvicorn(sock, certificate_and_key, http='h11', loop='asyncio')
    elif name == 'uvicorn-httptools':
        serve_uvicorn(sock, certificate_and_key, http='httptools', loop='uvloop')
    elif name == 'waitress':
        serve_waitress(sock, certificate_and_key)
    else:
        sys.exit(f'unknown server {name}')


if __name__ == '__main__':
    main(*sys.argv[1:])
