"""What the clients of clients.py and peers.py are given, and what they all use."""
import functools
import ssl

FOREVER = 3600  # seconds
MANY = 100_000  # connections
FIELDS = {
    'accept': 'application/json',
    'authorization': 'Bearer abcdefghijklmnop',
    'user-agent': 'service/1.0',
    'x-request-id': '1234567',
}
BYTE_FIELDS = tuple((name.encode(), value.encode()) for name, value in FIELDS.items())


class Setup:
    def __init__(self, ca, nameserver, concurrency, is_closing):
        self.ca = ca
        self.nameserver = tuple(nameserver)
        self.concurrency = concurrency
        # Whether the server closes the connection after each response.
        self.is_closing = is_closing

    @functools.cached_property
    def context(self):
        context = ssl.create_default_context(cafile=self.ca)
        context.set_alpn_protocols(['http/1.1'])
        return context

    def resolver(self, **kwargs):
        """A resolver that asks our nameserver, whose records stay fresh. Those of the file of
        hosts never are."""
        from aiodnsresolver import Resolver

        async def get_host(*_):
            return None

        async def get_nameservers(*_):
            yield 1, self.nameserver

        return Resolver(get_host=get_host, get_nameservers=get_nameservers, **kwargs)


def length_of(size):
    return {'content-length': str(size)}
