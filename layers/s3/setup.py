from pathlib import Path

from setuptools import setup

setup(
    name='lowhaio-s3',
    version='0.1.0',
    description='Objects in S3, for lowhaio',
    long_description=Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author='the lowhaio contributors',
    license='MIT',
    py_modules=['lowhaio_s3'],
    # The types of a single module can be in a stub-only package only (PEP 561).
    packages=['lowhaio_s3-stubs'],
    python_requires='>=3.11',
    install_requires=[
        'lowhaio>=0.1',
        'lowhaio-aws-sigv4>=0.1',
        'lowhaio-aws-sigv4-streaming>=0.1',
        'lowhaio-retry>=0.1',
    ],
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
