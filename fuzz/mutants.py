"""Changes lowhaio.py in one place at a time, and sees whether a test notices.

A change that no test notices is called a survivor. Either a test is missing, or the code can go.
Each survivor is printed as a diff. Those that make no difference to a user are listed in
MUTANTS.md, with the reason, and are not printed again. Exits with 1 if there are others. With
`--all` it also tells which of those listed are no longer a change of lowhaio.py.

The tests run in a copy of the tree, on asyncio's loop. They are measured first, unless neither
they nor lowhaio.py have changed since the last time. For each change, the tests that run its lines
are run, the quickest first, until one fails.
"""

import argparse
import ast
import difflib
import faulthandler
import hashlib
import itertools
import json
import os
import pathlib
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from functools import cache

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent

# The parts of the module that are changed, by the names of their banners.
TARGETS = ('names', 'the local resolver', 'stepping what the caller gave us',
           'the connections of one pool', 'connecting', 'sending', 'response head', 'framing',
           'sections of fields', 'response body', 'connection and waiting')

# The operators of cosmic-ray that are used, beside our own below. Operators that differ from these
# only in how absurd their result is are left out.
OPERATORS = tuple('core/' + name for name in (
    'AddNot', 'NumberReplacer', 'RemoveDecorator', 'ZeroIterationForLoop',
    'ReplaceAndWithOr', 'ReplaceOrWithAnd', 'ReplaceBreakWithContinue',
    'ReplaceTrueWithFalse', 'ReplaceFalseWithTrue', 'ReplaceUnaryOperator_Delete_Not',
    'ReplaceBinaryOperator_Add_Sub', 'ReplaceBinaryOperator_Sub_Add',
    'ReplaceBinaryOperator_Mul_Add', 'ReplaceBinaryOperator_Mod_Add',
    'ReplaceComparisonOperator_Eq_NotEq', 'ReplaceComparisonOperator_NotEq_Eq',
    'ReplaceComparisonOperator_Is_IsNot', 'ReplaceComparisonOperator_IsNot_Is',
    'ReplaceComparisonOperator_Lt_LtE', 'ReplaceComparisonOperator_LtE_Lt',
    'ReplaceComparisonOperator_Gt_GtE', 'ReplaceComparisonOperator_GtE_Gt'))

# A change may make a test hang or fill the memory. So each test gets this many seconds, and all
# together this many bytes.
TIME_LIMIT = 20
MEMORY_LIMIT = 4 * 1024 ** 3


# ------------------------------------------------------------------------------- the changes

def own_operators():
    from cosmic_ray.operators.operator import Operator
    from parso.python.tree import Keyword, Name, String

    class DeleteStatement(Operator):
        kinds = {'expr_stmt', 'atom_expr', 'return_stmt', 'raise_stmt', 'del_stmt'}

        def mutation_positions(self, node):
            if (node.type == 'simple_stmt' and node.children[0].type in self.kinds
                    and not node.get_code(include_prefix=False).startswith('__slots__')):
                yield node.start_pos, node.end_pos

        def mutate(self, node, index):
            node.children[0] = Keyword(
                'pass', node.start_pos, prefix=node.get_first_leaf().prefix)
            return node

        @classmethod
        def examples(cls):
            return ()

    class ReplaceException(Operator):
        """Like the operator of cosmic-ray, which does not know names with a dot."""

        def mutation_positions(self, node):
            for caught in self.caught(node):
                yield caught.start_pos, caught.end_pos

        def mutate(self, node, index):
            caught = self.caught(node)[index]
            siblings = caught.parent.children
            siblings[siblings.index(caught)] = Name(
                'ZeroDivisionError', caught.start_pos, prefix=caught.get_first_leaf().prefix)
            return node

        @staticmethod
        def caught(node):
            if node.type != 'except_clause':
                return []
            caught = node.children[1]
            if caught.type != 'atom':
                return [caught]
            return caught.children[1].children[::2]

        @classmethod
        def examples(cls):
            return ()

    class DeleteCharacterOfPattern(Operator):
        def mutation_positions(self, node):
            for _ in self.changed(node):
                yield node.start_pos, node.end_pos

        def mutate(self, node, index):
            return String(self.changed(node)[index], node.start_pos, prefix=node.prefix)

        @staticmethod
        @cache
        def changed(node):
            if node.type != 'string':
                return []
            statement = node.search_ancestor('expr_stmt')
            if statement is None or 're.compile(' not in statement.get_code():
                return []
            found = {}
            for index in range(node.value.index(node.value[-1]) + 1, len(node.value) - 1):
                value = node.value[:index] + node.value[index + 1:]
                with warnings.catch_warnings():
                    warnings.simplefilter('error')
                    try:
                        re.compile(ast.literal_eval(value))
                    except (SyntaxError, ValueError, Warning, re.error):
                        continue
                found[value] = None
            return list(found)

        @classmethod
        def examples(cls):
            return ()

    return [DeleteStatement(), ReplaceException(), DeleteCharacterOfPattern()]


class Places:
    """Tells which part, function and statement of the source a line belongs to."""

    def __init__(self, source):
        self.tree = ast.parse(source)
        self.banners = [
            (number, match[1]) for number, line in enumerate(source.splitlines(), 1)
            if (match := re.fullmatch('# -{9,} (.*)', line))]
        self.scopes = []
        self.statements = []
        self.walk(self.tree, '')

    def walk(self, parent, prefix):
        for node in ast.iter_child_nodes(parent):
            name = prefix
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                name = f'{prefix}.{node.name}'.lstrip('.')
                self.scopes.append((node, name))
            if isinstance(node, ast.stmt):
                self.statements.append((node, name))
            self.walk(node, name)

    def section(self, line):
        return next((name for number, name in reversed(self.banners) if number < line), '')

    def scope(self, line):
        """The innermost function or class of a line, and its name."""
        return next(((node, name) for node, name in reversed(self.scopes)
                     if first_line(node) <= line <= node.end_lineno), (None, ''))

    def is_in(self, line, target):
        name = self.scope(line)[1]
        return target in (self.section(line), name) or name.startswith(target + '.')

    def lines_to_run(self, line):
        """The lines of which a test must run at least one to notice a change of this line."""
        scope, _ = self.scope(line)
        if scope is None:
            names = {node.id for statement, _ in self.statements
                     if statement.lineno <= line <= statement.end_lineno
                     for node in ast.walk(statement)
                     if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
            return {node.lineno for node in ast.walk(self.tree)
                    if isinstance(node, ast.Name) and node.id in names}
        if isinstance(scope, ast.ClassDef) or line < scope.body[0].lineno:
            return set(range(scope.body[0].lineno, scope.end_lineno + 1))
        statement = next(node for node, _ in reversed(self.statements)
                         if node.lineno <= line <= node.end_lineno)
        body = getattr(statement, 'body', None)
        end = statement.end_lineno if not body or line >= body[0].lineno else body[0].lineno - 1
        return set(range(statement.lineno, end + 1))


def first_line(node):
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


class Mutant:
    def __init__(self, source, changed, name, lines):
        self.source = changed
        self.lines = lines
        diff = [line for line in difflib.unified_diff(
            source.splitlines(), changed.splitlines(), lineterm='', n=1)
            if not line.startswith(('---', '+++', '@@'))]
        # MUTANTS.md names a mutant by this diff, because line numbers change too often.
        self.diff = '\n'.join(f'{line[0]} {line[1:].strip()}'.rstrip() for line in diff)
        self.diff = f'@@ {name or "module"}\n{self.diff}'.rstrip()


def find_mutants(source, targets, choose):
    """The mutants of all places and operators in the targets that `choose` picks."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator

    places = Places(source)
    lines = {line for line in range(1, source.count('\n') + 1)
             if any(places.is_in(line, target) for target in targets)}
    operators = [get_operator(name)() for name in OPERATORS] + own_operators()
    found = []
    before = ''
    for child in get_ast(source).children:
        part = child.get_code()
        found += [
            (before, part, number, operator, index)
            for number, node in enumerate(ast_nodes(get_ast(part)))
            if before.count('\n') + node.start_pos[0] in lines
            for operator in operators
            for index, _ in enumerate(operator.mutation_positions(node))]
        before += part
    mutants = {}
    for before, part, number, operator, index in choose(found):
        # The source is parsed each time, because an operator may change more than it returns.
        node = next(itertools.islice(ast_nodes(get_ast(part)), number, None))
        start, end = offset(part, node.get_start_pos_of_prefix()), offset(part, node.end_pos)
        line = before.count('\n') + node.start_pos[0]
        code = operator.mutate(node, index)
        code = '' if code is None else code.get_code()
        changed = before + part[:start] + code + part[end:] + source[len(before + part):]
        try:
            compile(changed, 'lowhaio.py', 'exec')
        except (SyntaxError, ValueError):
            continue
        mutants[changed] = Mutant(
            source, changed, places.scope(line)[1], places.lines_to_run(line))
    return list(mutants.values()), len(found)


def offset(source, position):
    line, column = position
    return sum(map(len, source.splitlines(keepends=True)[:line - 1])) + column


# --------------------------------------------------------------------------------- the tests

class Measuring:
    """A plugin of pytest that notes which lines each test runs, and how long it takes."""

    def __init__(self, coverage):
        self.coverage = coverage
        self.seconds = {}
        self.failed = set()

    def pytest_collection_modifyitems(self, items):
        items[:] = on_asyncio(items)

    def pytest_runtest_logstart(self, nodeid):
        self.coverage.switch_context(nodeid)
        self.seconds[nodeid] = -time.perf_counter()

    def pytest_runtest_logfinish(self, nodeid):
        self.seconds[nodeid] += time.perf_counter()

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed.add(report.nodeid)


class Running:
    """A plugin of pytest that runs these tests in this order, none of them for too long."""

    def __init__(self, chosen):
        self.chosen = {nodeid: index for index, nodeid in enumerate(chosen)}

    def pytest_collection_modifyitems(self, items):
        items[:] = sorted((item for item in on_asyncio(items) if item.nodeid in self.chosen),
                          key=lambda item: self.chosen[item.nodeid])

    def pytest_runtest_logstart(self, nodeid):
        faulthandler.dump_traceback_later(TIME_LIMIT + 5, exit=True)


def on_asyncio(items):
    return [item for item in items
            if 'uvloop' not in getattr(item, 'callspec', item).__dict__.get('_idlist', ())]


def in_copy(what):
    """Measure the tests, or run some of them, in a process of its own.

    The current directory is the copy.
    """
    import pytest

    sys.path[0] = os.getcwd()  # not the directory of this file: its modules have common names
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    options = ['test.py', 'tests', '-q', '-p', 'xdist.plugin', '-n', '0',
               '-p', 'no:cacheprovider', '-p', 'no:faulthandler', '--tb=no']
    if what == 'run':
        return pytest.main([*options, '-x'], [Running(json.load(sys.stdin))])
    from coverage import Coverage

    coverage = Coverage(data_file=None, config_file=False, include=['lowhaio.py'])
    plugin = Measuring(coverage)
    with coverage.collect():
        pytest.main(options, [plugin])
    contexts = coverage.get_data().contexts_by_lineno(os.path.abspath('lowhaio.py'))
    tests = {nodeid: [seconds, []] for nodeid, seconds in plugin.seconds.items()
             if nodeid not in plugin.failed}
    for line, nodeids in contexts.items():
        for nodeid in tests.keys() & set(nodeids):
            tests[nodeid][1].append(line)
    pathlib.Path('measured.json').write_text(json.dumps([tests, sorted(plugin.failed)]))
    return 0


class Copy:
    """A copy of the tree and its tests, which is kept until the tests or lowhaio.py change."""

    def __init__(self):
        content = b''.join(path.read_bytes() for path in (
            ROOT / 'lowhaio.py', ROOT / 'test.py', *sorted((ROOT / 'tests').glob('**/*.[pt]*')))
            if path.exists())
        name = 'lowhaio-mutants-' + hashlib.sha256(content).hexdigest()[:16]
        self.path = pathlib.Path(tempfile.gettempdir(), name)
        measured = self.path / 'measured.json'
        if not measured.exists():
            shutil.rmtree(self.path, ignore_errors=True)
            shutil.copytree(ROOT, self.path, ignore=shutil.ignore_patterns('.git', '__pycache__'))
            print('Measuring the tests', flush=True)
            self.run('measure', '')
        self.tests, failed = json.loads(measured.read_text())
        print(f'{len(self.tests)} tests pass, in {sum(s for s, _ in self.tests.values()):.0f} s')
        if failed:
            print('Left out, as they fail by themselves:', *failed)
        self.noticed = Counter()

    def run(self, what, stdin, timeout=3600):
        env = {**os.environ, 'PYTEST_DISABLE_PLUGIN_AUTOLOAD': '1', 'PYTHONPATH': str(self.path)}
        # The tests are compiled only once. A mutant must not be mistaken for the one before it.
        env.pop('PYTHONDONTWRITEBYTECODE', None)
        if what == 'run':
            env['PYTHONDONTWRITEBYTECODE'] = '1'
            for path in self.path.glob('__pycache__/lowhaio.*'):
                path.unlink()
        return subprocess.run(
            [sys.executable, __file__, '--in-copy', what], cwd=self.path, env=env, input=stdin,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout,
            check=False)

    def choose(self, lines, limit):
        """The tests that run these lines, as many as fit into this time.

        Those that have noticed the most changes come first, and then the quickest.
        """
        chosen = {nodeid: seconds for nodeid, (seconds, run) in self.tests.items()
                  if not lines.isdisjoint(run)}
        for nodeid in sorted(chosen, key=lambda nodeid: (-self.noticed[nodeid], chosen[nodeid])):
            limit -= chosen[nodeid]
            if limit < 0:
                return
            yield nodeid

    def killer(self, mutant, limit):
        """The test that noticed the change, or None."""
        chosen = list(self.choose(mutant.lines, limit))
        if not chosen:
            return None
        (self.path / 'lowhaio.py').write_text(mutant.source, encoding='utf-8')
        try:
            done = self.run('run', json.dumps(chosen), timeout=60 + 10 * limit)
        except subprocess.TimeoutExpired:
            return 'the time limit'
        if not done.returncode:
            return None
        failed = re.search('^(?:FAILED|ERROR) (.*?)(?: - .*)?$', done.stdout, re.MULTILINE)
        if failed is None:
            return f'its end, with {done.returncode}: {done.stdout[-200:].strip()}'
        self.noticed[failed[1]] += 1
        return failed[1]


# ------------------------------------------------------------------------------- the command

def read_known():
    """The diffs that MUTANTS.md lists."""
    blocks = re.findall('^```diff\n(.*?)^```$', (HERE / 'MUTANTS.md').read_text(encoding='utf-8'),
                        re.MULTILINE | re.DOTALL)
    return {'@@ ' + diff.strip() for block in blocks
            for diff in re.split('^@@ ', block, flags=re.MULTILINE) if diff.strip()}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('targets', nargs='*', metavar='TARGET', default=TARGETS,
                        help='the name of a part, a class or a function of lowhaio.py')
    parser.add_argument('--seed', type=int, default=0, help='chooses the changes')
    parser.add_argument('--sample', type=int, default=250, metavar='N', help='how many')
    parser.add_argument('--all', action='store_true', help='all of them: for hours')
    parser.add_argument('--seconds', type=float, default=60, metavar='S',
                        help='of tests for a change, as they take without it')
    parser.add_argument('--list', action='store_true', help='print the changes only')
    parser.add_argument('--verbose', action='store_true', help='print what noticed each')
    parser.add_argument('--in-copy', choices=('measure', 'run'), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.in_copy:
        sys.exit(in_copy(args.in_copy))

    def choose(found):
        count = len(found) if args.all else min(args.sample, len(found))
        chosen = random.Random(args.seed).sample(range(len(found)), count)
        return [found[index] for index in sorted(chosen)]

    source = (ROOT / 'lowhaio.py').read_text(encoding='utf-8')
    mutants, count = find_mutants(source, args.targets, choose)
    print(f'{len(mutants)} changes of {count}', flush=True)
    if args.list:
        print(*(mutant.diff for mutant in mutants), sep='\n')
    known = read_known()
    if args.all and args.targets is TARGETS:
        for diff in sorted(known - {mutant.diff for mutant in mutants}):
            print('IN MUTANTS.md ONLY', diff, sep='\n')
    if args.list:
        return
    copy = Copy()
    unnoticed = excused = 0
    for mutant in mutants:
        killer = 'MUTANTS.md' if mutant.diff in known else copy.killer(mutant, args.seconds)
        excused += mutant.diff in known
        if killer is None:
            unnoticed += 1
            print('SURVIVED', mutant.diff, sep='\n', flush=True)
        elif args.verbose:
            print('noticed by', killer, flush=True)
            print(mutant.diff, flush=True)
    judged = len(mutants) - excused
    print(f'mutants.py: {judged - unnoticed} of {judged} changes were noticed, {unnoticed} not; '
          f'{excused} make no difference')
    sys.exit(1 if unnoticed else 0)


if __name__ == '__main__':
    main()
