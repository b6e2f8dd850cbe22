"""The servers that test_websocket.py starts

    python -m websocket_apps NAME FD [CERTIFICATE KEY]

Each accepts WebSockets on an inherited socket. The path says what it does with one:

    /echo       sends each message back
    /close      closes with the code 4001 and the reason 'bye' after the first message
    /fragments  answers each message with one in three fragments or more
    /code       tells the last code from 3000 on that a client has closed with, if any
    /refuse     answers with 403

If the server can do that, it pings each client once a second or more, and closes when there is no
answer. Of the subprotocols it chooses `b`.
"""

import asyncio
import importlib
import os
import signal
import socket
import ssl
import sys
from pathlib import Path

LARGEST = 16 * 1024 * 1024
PING_INTERVAL = 0.1
PING_TIMEOUT = 5

# aiohttp waits for half of it for the pong
HEARTBEAT = 1

last_code = 0


def note_code(code):
    global last_code
    if code >= 3000:
        last_code = code


def context_of(certificate_and_key):
    if not certificate_and_key:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate_and_key)
    return context


def uvicorn_of(implementation):
    def serve(sock, certificate_and_key):
        uvicorn = importlib.import_module('uvicorn')
        certificate, key = certificate_and_key or (None, None)
        uvicorn.Server(uvicorn.Config(
            asgi_app, lifespan='off', ws=implementation, ws_ping_interval=PING_INTERVAL,
            ws_ping_timeout=PING_TIMEOUT, ssl_certfile=certificate, ssl_keyfile=key,
        )).run(sockets=[sock])

    return serve


def serve_hypercorn(sock, certificate_and_key):
    config = importlib.import_module('hypercorn.config').Config()
    config.bind = [f'fd://{sock.detach()}']
    config.websocket_ping_interval = PING_INTERVAL
    if certificate_and_key:
        config.certfile, config.keyfile = certificate_and_key
    serve = importlib.import_module('hypercorn.asyncio').serve
    asyncio.run(serve(asgi_app, config))


async def asgi_app(scope, receive, send):
    if scope['type'] != 'websocket':
        return
    assert (await receive())['type'] == 'websocket.connect'
    path = scope['path']
    if path == '/refuse':
        await send({'type': 'websocket.close'})
        return
    offered = scope['subprotocols']
    await send({'type': 'websocket.accept', 'subprotocol': 'b' if 'b' in offered else None})
    if path == '/code':
        await send({'type': 'websocket.send', 'text': str(last_code)})
    while True:
        message = await receive()
        if message['type'] == 'websocket.disconnect':
            note_code(message['code'])
            return
        if path == '/close':
            await send({'type': 'websocket.close', 'code': 4001, 'reason': 'bye'})
            return
        await send({'type': 'websocket.send', **{
            name: value for name, value in message.items() if name != 'type'}})


def serve_aiohttp(sock, certificate_and_key):
    web = importlib.import_module('aiohttp.web')

    async def handler(request):
        if request.path == '/refuse':
            return web.Response(status=403)
        ws = web.WebSocketResponse(
            protocols=('b',), heartbeat=HEARTBEAT, max_msg_size=LARGEST)
        await ws.prepare(request)
        if request.path == '/code':
            await ws.send_str(str(last_code))
        async for message in ws:
            if request.path == '/close':
                await ws.close(code=4001, message=b'bye')
            elif message.type == importlib.import_module('aiohttp').WSMsgType.TEXT:
                await ws.send_str(message.data)
            else:
                await ws.send_bytes(message.data)
        note_code(ws.close_code)
        return ws

    app = web.Application()
    app.router.add_get('/{path:.*}', handler)
    web.run_app(app, sock=sock, ssl_context=context_of(certificate_and_key))


def serve_websockets(sock, certificate_and_key):
    server = importlib.import_module('websockets.asyncio.server')

    def refuse(connection, request):
        return connection.respond(403, 'no') if request.path == '/refuse' else None

    async def handler(ws):
        path = ws.request.path
        if path == '/code':
            await ws.send(str(last_code))
        try:
            async for message in ws:
                if path == '/close':
                    await ws.close(4001, 'bye')
                elif path == '/fragments':
                    third = len(message) // 3
                    await ws.send([
                        message[:third], message[third:2 * third], message[2 * third:]])
                else:
                    await ws.send(message)
        except importlib.import_module('websockets.exceptions').ConnectionClosedError:
            note_code(ws.close_code)

    def choose(ws, offered):
        return 'b' if 'b' in offered else None

    async def serve():
        async with server.serve(
                handler, sock=sock, ssl=context_of(certificate_and_key), max_size=LARGEST,
                ping_interval=PING_INTERVAL, ping_timeout=PING_TIMEOUT, process_request=refuse,
                select_subprotocol=choose) as served:
            # This ends the loop when the process is told to end.
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, served.close)
            await served.wait_closed()

    asyncio.run(serve())


def serve_ws(sock, certificate_and_key):
    """That of Node, which becomes this process."""
    os.execvp('node', [
        'node', str(Path(__file__).with_name('websocket_server.js')), str(sock.fileno()),
        str(LARGEST), str(1000 * PING_INTERVAL), *certificate_and_key])


def go_of(library):
    """One of those in Go: the program that the test has built becomes this process."""
    def serve(sock, certificate_and_key):
        program = os.environ['GO_WEBSOCKET_SERVER']
        os.execv(program, [
            program, library, str(sock.fileno()), str(LARGEST), f'{1000 * PING_INTERVAL:.0f}',
            f'{1000 * PING_TIMEOUT:.0f}', *certificate_and_key])

    return serve


SERVERS = {
    'websockets': serve_websockets,
    'aiohttp': serve_aiohttp,
    'uvicorn-websockets': uvicorn_of('websockets-sansio'),
    'uvicorn-wsproto': uvicorn_of('wsproto'),
    'hypercorn': serve_hypercorn,
    'ws': serve_ws,
    'gorilla': go_of('gorilla'),
    'x-net': go_of('x-net'),
}


def main(name, fd, *certificate_and_key):
    SERVERS[name](socket.socket(fileno=int(fd)), certificate_and_key)


if __name__ == '__main__':
    main(*sys.argv[1:])
