"""A service that asks a language model: FastAPI, and httpx2 on lowhaio.

    python examples/model_service.py
    python examples/model_service.py --model https://api.openai.com/v1 --name gpt-5 --port 8080
    curl -N http://127.0.0.1:8080/answers -H 'content-type: application/json' \\
        -d '{"question": "What is a sundial?", "stream": true}'

`POST /answers` gives the answer in JSON or, with `"stream": true`, its text as it comes. All
requests to the model go through one client, which keeps connections to it. When somebody who asked
goes away, the request to the model ends at once. If the model can not be reached, or refuses, the
answer is 502. If it takes too long, it is 504.

The model is any server with the chat completions of OpenAI. Its key is OPENAI_API_KEY of the
environment. Without --model it is one of this program's own, on the loopback interface, which
only repeats the question. With --transport stock the client has httpx2's own transport, to
compare.
"""
import argparse
import contextlib
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from lowhaio_httpx2 import LowhaioTransport
from pydantic import BaseModel

# An answer may take minutes to begin. A connection may not.
TIMEOUT = httpx2.Timeout(300, connect=5)
# A client that is given a transport ignores its own limits, so they are the transport's.
LIMITS = httpx2.Limits(max_connections=1000, max_keepalive_connections=100)
TRANSPORTS = {'lowhaio': LowhaioTransport, 'stock': httpx2.AsyncHTTPTransport}


class Question(BaseModel):
    question: str
    stream: bool = False


def create_app(url, name, transport):
    """The ASGI application. `url` is where the API of the model begins, `transport` a key of
    TRANSPORTS."""
    @contextlib.asynccontextmanager
    async def lifespan(app):
        async with httpx2.AsyncClient(
                base_url=url, timeout=TIMEOUT, transport=TRANSPORTS[transport](limits=LIMITS),
                headers={'authorization': f'Bearer {os.environ.get("OPENAI_API_KEY", "none")}'},
                ) as app.state.client:
            yield

    app = FastAPI(title='Answers', lifespan=lifespan)

    @app.post('/answers')
    async def answer(question: Question, request: Request):
        client = request.app.state.client
        response = await client.send(client.build_request('POST', '/chat/completions', json={
            'model': name, 'stream': question.stream,
            'messages': [{'role': 'user', 'content': question.question}]}), stream=True)
        if question.stream and response.is_success:
            return StreamingResponse(texts(response), media_type='text/plain')
        try:
            await response.aread()
        finally:
            await response.aclose()
        response.raise_for_status()
        return {'answer': response.json()['choices'][0]['message']['content']}

    @app.exception_handler(httpx2.HTTPError)
    async def failed(request, error):
        took_too_long = isinstance(error, httpx2.TimeoutException)
        return JSONResponse({'detail': f'The model: {error}'}, 504 if took_too_long else 502)

    return app


async def texts(response):
    """The text of each event. If the server of this application stops to read them, because nobody
    listens any more, the connection closes."""
    async with contextlib.aclosing(response):
        async for event in httpx2.EventSource(response):
            if event.data == '[DONE]':
                # What is left is the end of the body: with it, the connection can be used again.
                continue
            for choice in json.loads(event.data)['choices']:
                if text := choice['delta'].get('content'):
                    yield text


class Parrot(BaseHTTPRequestHandler):
    """The model that only repeats the question, word by word."""

    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers['content-length'])))
        text = asked['messages'][-1]['content']
        if not asked['stream']:
            content = json.dumps({'choices': [{'message': {'content': text}}]}).encode()
            self.respond('application/json', ('content-length', str(len(content))))
            self.wfile.write(content)
            return
        self.respond('text/event-stream', ('transfer-encoding', 'chunked'))
        for word in text.split(' '):
            self.send_event(json.dumps({'choices': [{'delta': {'content': word + ' '}}]}))
        self.send_event('[DONE]')
        self.wfile.write(b'0\r\n\r\n')

    def respond(self, content_type, framing):
        self.send_response(200)
        self.send_header('content-type', content_type)
        self.send_header(*framing)
        self.end_headers()

    def send_event(self, data):
        event = f'data: {data}\n\n'.encode()
        self.wfile.write(b'%x\r\n%b\r\n' % (len(event), event))

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def own_model():
    """The URL of the API of a Parrot, in a thread."""
    with ThreadingHTTPServer(('127.0.0.1', 0), Parrot) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f'http://127.0.0.1:{server.server_port}/v1'
        finally:
            server.shutdown()
            thread.join()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', metavar='URL', help='where the API of the model begins')
    parser.add_argument('--name', default='parrot', help='of the model (default: parrot)')
    parser.add_argument('--host', default='127.0.0.1', help='to listen at (default: 127.0.0.1)')
    parser.add_argument('--port', type=int, default=8080, help='to listen at (default: 8080)')
    parser.add_argument('--transport', choices=TRANSPORTS, default='lowhaio',
                        help='of the client (default: lowhaio)')
    args = parser.parse_args()
    with contextlib.nullcontext(args.model) if args.model else own_model() as url:
        uvicorn.run(create_app(url, args.name, args.transport), host=args.host, port=args.port,
                    ws='none', timeout_graceful_shutdown=5)


if __name__ == '__main__':
    main()
