"""Every habit of the project, one command each: `nox -s NAME`. `nox -l` lists them.

What follows `--` goes to the command: `nox -s tests-3.12 -- -k tls`.
"""

from pathlib import Path

import nox

PYTHONS = ['3.11', '3.12', '3.13', '3.14', '3.15']

nox.needs_version = '>=2024.4.15'
nox.options.sessions = ['style', 'types', 'tests', 'outside', 'dist']
nox.options.reuse_venv = 'yes'


@nox.session(python=PYTHONS)
def tests(session):
    """The tests that need no other software, on both loops; every line and branch is covered."""
    session.install('.[test]')
    session.run('python', '-m', 'pytest', *(session.posargs or ['--cov']))


# moto can not be built for CPython 3.15 yet.
@nox.session(python=PYTHONS[:-1])
def outside(session):
    """The tests with other people's servers, layers, applications, SDKs and type checkers."""
    session.install('.[test,types,outside]')
    session.run('python', '-m', 'pytest', *(session.posargs or ['tests/outside']))


@nox.session(python=PYTHONS[:-1])
def loops(session):
    """The tests with real servers, with the client on uvloop and on rloop."""
    session.install('.[test,outside]')
    for name in 'uvloop', 'rloop':
        session.run('python', '-m', 'pytest', 'tests/outside/test_interop.py',
                    'tests/outside/test_websocket.py', *session.posargs,
                    env={'LOWHAIO_TEST_LOOP': name})


@nox.session(python=PYTHONS[0])
def debug(session):
    """The same tests, with everything that Python and asyncio can complain about."""
    session.install('.[test]')
    # In variables, so that the processes which run the tests have them, too.
    session.run('python', '-m', 'pytest', *session.posargs, env={
        'PYTHONASYNCIODEBUG': '1', 'PYTHONDEVMODE': '1', 'PYTHONWARNINGS': 'error'})


@nox.session(python=PYTHONS[0])
def style(session):
    """ruff, the transport that is made of another, and the lines that CONTRIBUTING.md names."""
    session.install('.[style]')
    session.run('ruff', 'check', '.', *session.posargs)
    session.run('python', '.ci/transports.py', '--check')
    session.run('python', '.ci/places.py', '--check')


@nox.session(python=PYTHONS)
def types(session):
    """mypy on the module; mypy, pyright and stubtest on what is installed."""
    session.install('.[test,types]')
    session.run('mypy')
    session.run('python', '.ci/stubs.py', '--check')
    session.run('python', '-m', 'pytest', 'tests/outside/test_types.py', *session.posargs)


@nox.session(python=PYTHONS[0])
def fuzz(session):
    """A share of each search for a broken promise: two minutes. With `-- --full`: hours."""
    session.install('.[test,fuzz]')
    session.run('python', 'fuzz/run.py', *session.posargs)


@nox.session(python=PYTHONS[0])
def soak(session):
    """Memory, descriptors and CPU under a mixed load, for an hour."""
    session.install('.[test]')
    session.run('python', 'fuzz/soak.py', *(session.posargs or ['--minutes', '60']))


@nox.session(python=PYTHONS[0])
def mutants(session):
    """Does a test notice each change of the module? Hours."""
    session.install('.[test,fuzz]')
    session.run('python', 'fuzz/mutants.py', *session.posargs)


@nox.session(python=PYTHONS[0])
def promises(session):
    """What is promised of tasks, time-outs, memory and descriptors, measured."""
    session.install('.[test]')
    session.run('python', 'benchmarks/promises.py', *session.posargs)


@nox.session(python=PYTHONS[0])
def bench(session):
    """CPU and throughput beside those of the peers. Needs nginx, on a machine without load."""
    session.install('.[test,bench]')
    session.run('python', 'benchmarks/run.py', *session.posargs)


@nox.session(python=PYTHONS[0])
def docs(session):
    """The site of docs/. A link that leads nowhere is an error."""
    session.install('.[docs]')
    session.run('mkdocs', 'build', '--strict', *session.posargs,
                env={'NO_MKDOCS_2_WARNING': '1'})


@nox.session(python=PYTHONS)
def dist(session):
    """Build the distributions, the layers' too, check them, and try each, freshly installed."""
    session.install('build', 'pip', 'setuptools>=70.1', 'twine')
    directory = Path(session.create_tmp(), 'dist').resolve()
    if directory.exists():
        for path in directory.iterdir():
            path.unlink()
    together = directory.with_name('together')
    together.mkdir(exist_ok=True)
    for path in together.iterdir():
        path.unlink()
    for setup in (Path('setup.py'), *sorted(Path('layers').glob('*/setup.py'))):
        session.run('python', '-m', 'build', '--no-isolation', '--outdir', str(directory),
                    str(setup.parent), silent=True)
    session.run('python', '-m', 'build', '--no-isolation', '--outdir', str(together), 'layers',
                silent=True)
    distributions = sorted([*directory.iterdir(), *together.iterdir()])
    session.run('twine', 'check', '--strict', *map(str, distributions))

    environment = directory.with_name('environment')
    python = str(environment / 'bin' / 'python')

    def install(*requirements):
        session.run('python', '-m', 'venv', '--clear', '--without-pip', str(environment))
        session.run('python', '-m', 'pip', '--python', python, 'install', '--quiet',
                    '--find-links', str(directory), *requirements)

    for pattern in ('*.whl', '*.tar.gz'):
        core, *layers = sorted(map(str, directory.glob(pattern)))
        install(f'{core}[examples]')
        session.run(python, 'examples/quickstart.py', external=True)
        install(core, *layers)
        session.run(python, 'layers/stacked.py', external=True)
        [all_layers] = together.glob(pattern)
        install(core, f'{all_layers}[all]')
        session.run(python, 'layers/stacked.py', external=True)
    # Each with what it says it needs, and nothing of this directory.
    for layer in sorted(directory.glob('lowhaio_*.whl')):
        install(str(layer))
        session.run(python, '-I', '-c', f'import {layer.name.partition("-")[0]}', external=True)
