from pathlib import Path

from setuptools import setup

setup(
    name='lowhaio-waterfall',
    version='0.1.0',
    description='Shows what requests do, as a waterfall: a command and a recorder for lowhaio',
    long_description=Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author='the lowhaio contributors',
    license='MIT',
    packages=['lowhaio_waterfall'],
    package_data={'lowhaio_waterfall': ['page.html', 'py.typed']},
    python_requires='>=3.11',
    install_requires=[
        'lowhaio>=0.1',
        'lowhaio-redirect>=0.1',
        'lowhaio-retry>=0.1',
        'rich>=13',
    ],
    entry_points={
        'console_scripts': [
            'lowhaio-waterfall = lowhaio_waterfall:main',
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
