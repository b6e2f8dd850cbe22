"""What the servers of language models say, in bytes, for test_sdks.py

Nothing here is asked of a model: each answer is scripted. The forms are those of the OpenAI
chat completions, the Anthropic messages and the Gemini `generateContent` APIs.
"""

import json
from typing import NamedTuple

from tests.harness import chunked, response

JSON = b'content-type: application/json'
EVENTS = b'content-type: text/event-stream'
# The head of a stream of events, and how its body ends
STREAM = chunked(b'', EVENTS)
END = b'0\r\n\r\n'
DONE = b'data: [DONE]\n\n'


class Asked(NamedTuple):
    head: bytes
    body: bytes
    connection: int  # the index of the connection that it came over

    @property
    def line(self):
        return self.head.partition(b' HTTP/')[0].decode()

    @property
    def json(self):
        return json.loads(self.body)


class Model:
    """A script of a server that gives the next answer to each request, and at last the last one

    An answer is bytes, or a coroutine function of the peer, which is called when all of the
    request has come. If it returns False, the connection closes.
    """

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    async def __call__(self, peer):
        while True:
            head = await peer.read_head()
            self.asked.append(Asked(head, await peer.read_body(head), peer.index))
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            if isinstance(answer, bytes):
                await peer.send(answer)
            elif await answer(peer) is False:
                return

    @property
    def connections(self):
        return [asked.connection for asked in self.asked]


def answer(value, code=200, *fields):
    """A whole response in JSON"""
    return response(code, json.dumps(value).encode(), JSON, *fields)


def chunk(data):
    """One chunk of a body"""
    return b'%x\r\n%b\r\n' % (len(data), data)


def event(value, name=None):
    """One event of a stream, as a chunk"""
    return chunk((f'event: {name}\n' if name else '').encode()
                 + b'data: ' + json.dumps(value).encode() + b'\n\n')


def completion(text):
    """Of OpenAI"""
    return answer({
        'id': 'chatcmpl-1', 'object': 'chat.completion', 'created': 1, 'model': 'a-model',
        'choices': [{'index': 0, 'finish_reason': 'stop',
                     'message': {'role': 'assistant', 'content': text}}]})


def delta(text):
    """A part of a streamed completion of OpenAI"""
    return event({
        'id': 'chatcmpl-1', 'object': 'chat.completion.chunk', 'created': 1, 'model': 'a-model',
        'choices': [{'index': 0, 'delta': {'content': text}, 'finish_reason': None}]})


def message(text):
    """Of Anthropic"""
    return answer(_message([{'type': 'text', 'text': text}], 'end_turn'))


def _message(content, stop_reason):
    return {'id': 'msg_1', 'type': 'message', 'role': 'assistant', 'model': 'a-model',
            'content': content, 'stop_reason': stop_reason, 'stop_sequence': None,
            'usage': {'input_tokens': 1, 'output_tokens': 1}}


def message_start():
    """The first events of a streamed message of Anthropic"""
    return (named('message_start', message=_message([], None))
            + named('content_block_start', index=0, content_block={'type': 'text', 'text': ''}))


def message_delta(text):
    return named('content_block_delta', index=0, delta={'type': 'text_delta', 'text': text})


def message_end():
    return (named('content_block_stop', index=0)
            + named('message_delta', delta={'stop_reason': 'end_turn', 'stop_sequence': None},
                    usage={'output_tokens': 2})
            + named('message_stop'))


def named(name, **fields):
    """An event of Anthropic"""
    return event({'type': name, **fields}, name)


def generated(text):
    """A `GenerateContentResponse` of Gemini"""
    return {'candidates': [{'index': 0, 'content': {'role': 'model', 'parts': [{'text': text}]}}]}
