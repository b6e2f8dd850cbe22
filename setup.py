from pathlib import Path

from setuptools import setup

setup(
    name='lowhaio',
    version='0.1.0',
    description='A lightweight, streaming-first asyncio HTTP/1.1 client that creates no tasks',
    long_description=Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author='the lowhaio contributors',
    license='MIT',
    py_modules=['lowhaio'],
    python_requires='>=3.11',
    install_requires=[
        'aiodnsresolver>=0.0.151',
    ],
    extras_require={
        'examples': [
            'tqdm',
        ],
        'test': [
            'aiohttp',
            'coverage',
            'dnslib',
            'granian',
            'gunicorn',
            'h11',
            'httptools',
            'hypercorn',
            'mypy',
            'pytest',
            'pytest-cov',
            'ruff',
            'tqdm',
            'trustme',
            'uvicorn',
            'uvloop; platform_system != "Windows"',
            'waitress',
        ],
    },
    classifiers=[
        'Framework :: AsyncIO',
        'Intended Audience :: Developers',
        'License :: OSI Approved :: MIT License',
        'Operating System :: MacOS',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Internet :: WWW/HTTP',
    ],
)
