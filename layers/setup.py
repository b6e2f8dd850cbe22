"""All layers in one distribution. Each is one of its own too, by the setup.py of its folder."""
import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

REPOSITORY = 'https://github.com/michalc/lowhaio'
# By the name of each module, its path without the suffix: `redirect/lowhaio_redirect`.
MODULES = {path.stem: str(path.with_suffix('')) for path in sorted(Path().glob('*/lowhaio_*.py'))}
# As in a layer's own distribution, the types of a single module are in a stub-only package.
STUBS = {f'{name}-stubs': f'{path}-stubs' for name, path in MODULES.items()}
# The layers that are packages, which have their types in them.
PACKAGES = {path.parent.name: str(path.parent) for path in Path().glob('*/lowhaio_*/__init__.py')}

# What single layers need beside lowhaio, so that nobody installs what only other layers need.
EXTRAS = {
    # Signatures for several regions; CRC32C and CRC64NVME.
    'aws': ['awscrt', 'cryptography'],
    'compression': ['backports.zstd; python_version < "3.14"', 'brotli>=1.2'],
    'cookies': ['publicsuffixlist'],
    'httpx': ['httpx>=0.28'],
    'httpx2': ['httpx2>=2'],
    'opentelemetry': ['opentelemetry-api>=1.30'],
    's3': ['awscrt'],
    'waterfall': ['rich>=13'],
    'websocket': ['websockets>=16'],
}


class BuildModules(build_py):
    """`py_modules` have one folder for all of them. These have one each, that of `package_dir`."""

    def find_modules(self):
        return [('', name, f'{self.package_dir[name]}.py') for name in self.py_modules]


def description():
    """The README. A package index shows it too, so its links begin with the repository."""
    text = Path('README.md').read_text(encoding='utf-8')
    return re.sub(r'\]\((?!https:)', f']({REPOSITORY}/blob/HEAD/layers/', text)


setup(
    name='lowhaio-layers',
    version='0.1.0',
    description='All layers of lowhaio: redirects, retries, cookies, sessions and more',
    long_description=description(),
    long_description_content_type='text/markdown',
    author='the lowhaio contributors',
    license='MIT',
    py_modules=list(MODULES),
    packages=[*STUBS, *PACKAGES],
    package_dir={**MODULES, **STUBS, **PACKAGES},
    package_data={name: ['*.html', 'py.typed'] for name in PACKAGES},
    cmdclass={'build_py': BuildModules},
    python_requires='>=3.11',
    install_requires=[
        'lowhaio>=0.1',
    ],
    extras_require={
        **EXTRAS,
        'all': sorted({requirement for extra in EXTRAS.values() for requirement in extra}),
    },
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
