from pathlib import Path

from setuptools import setup

setup(
    name='lowhaio-aws-sigv4-streaming',
    version='0.1.0',
    description='AWS Signature Version 4 for lowhaio, with checksums of bodies that are streamed',
    long_description=Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author='the lowhaio contributors',
    license='MIT',
    py_modules=['lowhaio_aws_sigv4_streaming'],
    # The types of a single module can be in a stub-only package only (PEP 561).
    packages=['lowhaio_aws_sigv4_streaming-stubs'],
    python_requires='>=3.11',
    install_requires=[
        'lowhaio>=0.1',
        'lowhaio-aws-sigv4>=0.1',
    ],
    extras_require={
        # For CRC32C and CRC64NVME.
        'crt': [
            'awscrt',
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
