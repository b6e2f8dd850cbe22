#!/usr/bin/env bash
# openai and anthropic give half an answer for a whole one.
#
# Packages: openai 3.57.0, anthropic 2.14.0.
# Guess: a stream of events that ends before its last one, `[DONE]` or `message_stop`, is an error: proxies and
#   servers that shut down end such a response as they end any other. At least `get_final_completion()` and
#   `get_final_message()`, which give the whole answer, say so.
# What happens: nothing is raised. What has come is the answer. Only a `finish_reason` or a `stop_reason` that is
#   None tells that there was no end.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    openai==3.57.0 anthropic==2.14.0 httpx2==2.16.2 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import http.server
import json
import threading

import anthropic
import openai

EVENTS = {
    '/chat/completions': [(None, {
        'id': '1', 'object': 'chat.completion.chunk', 'created': 1, 'model': 'm',
        'choices': [{'index': 0, 'delta': {'content': 'Do not'}, 'finish_reason': None}]})],
    '/v1/messages': [
        ('message_start', {'message': {
            'id': '1', 'type': 'message', 'role': 'assistant', 'model': 'm', 'content': [],
            'stop_reason': None, 'stop_sequence': None, 'usage': {'input_tokens': 1, 'output_tokens': 1}}}),
        ('content_block_start', {'index': 0, 'content_block': {'type': 'text', 'text': ''}}),
        ('content_block_delta', {'index': 0, 'delta': {'type': 'text_delta', 'text': 'Do not'}})],
}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_POST(self):
        self.rfile.read(int(self.headers['content-length']))
        self.send_response(200)
        self.send_header('content-type', 'text/event-stream')
        self.send_header('transfer-encoding', 'chunked')
        self.end_headers()
        for name, value in EVENTS[self.path]:
            event = f'event: {name}\ndata: {json.dumps({"type": name, **value})}\n\n' if name else (
                f'data: {json.dumps(value)}\n\n')
            self.wfile.write(b'%x\r\n%b\r\n' % (len(event), event.encode()))
        self.wfile.write(b'0\r\n\r\n')

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
origin = f'http://127.0.0.1:{server.server_port}'
question = {'model': 'm', 'messages': [{'role': 'user', 'content': 'May I?'}]}

with openai.OpenAI(api_key='key', base_url=origin) as client:
    parts = [part.choices[0].delta.content for part in client.chat.completions.create(**question, stream=True)]
    print('openai, stream=True:', parts)
    assert parts == ['Do not']
    with client.chat.completions.stream(**question) as stream:
        choice = stream.get_final_completion().choices[0]
    print('openai, get_final_completion():', choice.message.content, choice.finish_reason)
    assert (choice.message.content, choice.finish_reason) == ('Do not', None)
with anthropic.Anthropic(api_key='key', base_url=origin) as client:
    with client.messages.stream(**question, max_tokens=100) as stream:
        message = stream.get_final_message()
    print('anthropic, get_final_message():', message.content[0].text, message.stop_reason)
    assert (message.content[0].text, message.stop_reason) == ('Do not', None)
PYTHON
# Seen:
#   openai, stream=True: ['Do not']
#   openai, get_final_completion(): Do not None
#   anthropic, get_final_message(): Do not None
