from pathlib import Path

from setuptools import setup

setup(
    name='lowhaio-auth',
    version='0.1.0',
    description='Basic, bearer and digest authentication: layers for lowhaio',
    long_description=Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author='the lowhaio contributors',
    license='MIT',
    py_modules=['lowhaio_auth'],
    # Where type checkers look for the types of a single module (PEP 561). It is a link to it.
    packages=['lowhaio_auth-stubs'],
    python_requires='>=3.11',
    install_requires=[
        'lowhaio>=0.1',
    ],
    classifiers=[
        'Framework :: AsyncIO',
        'Intended Audience :: Developers',
        'Operating System :: MacOS',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Internet :: WWW/HTTP',
    ],
)
