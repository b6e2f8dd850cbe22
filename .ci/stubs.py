"""Writes the stubs: the types of the public names of each module, without what implements them.

    python .ci/stubs.py            writes them
    python .ci/stubs.py --check    exits with 1, and says which, if one is not what it would write

A distribution of a single module can carry its types in a stub-only package only: `py.typed` is
for packages (PEP 561), and without either of them mypy takes all names of the module for Any. A
stub has the names of `__all__`, and those that their declarations are made of.
"""

import ast
import pathlib
import sys

ROOT = pathlib.Path(__file__).parent.parent
MODULES = [ROOT / 'lowhaio.py', *sorted(ROOT.glob('layers/*/lowhaio_*.py'))]
WIDTH = 99
HEAD = '# Made of {name} by .ci/stubs.py.\n'


def stub_of(source, name):
    nodes = list(statements(ast.parse(source)))
    defined, imported, overloads = {}, {}, {}
    for node in nodes:
        for bound in names_bound_by(node):
            (imported if isinstance(node, (ast.Import, ast.ImportFrom)) else defined)[bound] = node
            if is_overload(node):
                overloads.setdefault(bound, []).append(node)
    public = ast.literal_eval(defined['__all__'].value)

    wanted, declarations = ['__all__', *public], {}
    if '__version__' in defined:
        wanted.append('__version__')
    needed = set()
    while wanted:
        bound = wanted.pop()
        if bound in needed:
            continue
        needed.add(bound)
        if bound in defined:
            # What implements overloads is not one of them.
            declarations[bound] = '\n'.join(
                declaration(node, bound, defined)
                for node in overloads.get(bound, [defined[bound]]))
            wanted += names_in(declarations[bound])

    lines = [HEAD.format(name=name)]
    lines += [text for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))
              if (text := imports(node, needed))]
    written = ''
    for bound in defined:  # in the module's order
        if bound in declarations:
            text = declarations[bound]
            is_block = text.startswith(('class', '@', 'def', 'async'))
            lines.append(f'\n{text}' if is_block or written != 'line' else text)
            written = 'block' if is_block else 'line'
    return '\n'.join(lines) + '\n'


def statements(tree):
    """Those of the module, with the imports that are for type checkers only."""
    for node in tree.body:
        match node:
            case ast.If(test=ast.Name('TYPE_CHECKING')):
                yield from node.body
            case _:
                yield node


def is_overload(node):
    return isinstance(node, ast.FunctionDef) and any(
        ast.unparse(decorator) == 'overload' for decorator in node.decorator_list)


def names_bound_by(node):
    match node:
        case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
            return [node.name]
        case ast.Assign(targets=[ast.Name(bound)]) | ast.AnnAssign(target=ast.Name(bound)):
            return [bound]
        case ast.Import() | ast.ImportFrom():
            return [(alias.asname or alias.name).partition('.')[0] for alias in node.names]
    return []


def names_in(text):
    """Strings are annotations, too: names that are declared further down stand in them."""
    found = [node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += [node.value] if node.value.isidentifier() else []
    return found


def imports(node, needed):
    if getattr(node, 'module', None) == '__future__':
        return None
    names = sorted(ast.unparse(alias) for alias in node.names
                   if (alias.asname or alias.name).partition('.')[0] in needed)
    if not names:
        return None
    if isinstance(node, ast.Import):
        return '\n'.join(f'import {name}' for name in names)
    return wrapped(f'from {"." * node.level}{node.module} import ', names, '', '(', ')')


def declaration(node, bound, defined, indent=''):
    match node:
        case ast.ClassDef():
            return of_class(node)
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return of_function(node, indent)
        case ast.AnnAssign():
            return f'{bound}: {ast.unparse(node.annotation)}'
        case ast.Assign(value=ast.List()) if bound == '__all__':
            return wrapped('__all__ = ', [repr(item.value) for item in node.value.elts],
                           '', '[', ']', always=True)
        case ast.Assign(value=ast.Constant(value)):
            return f'{bound}: {type(value).__name__}'
        case ast.Assign(value=ast.Call(func=ast.Name(name))) if name in defined:
            return f'{bound}: {name}'
        case ast.Assign():
            return f'{bound} = {ast.unparse(node.value)}'
    raise ValueError(f'{ast.unparse(node)} can not be declared')


def of_class(node):
    bases = ', '.join(map(ast.unparse, [*node.bases, *node.keywords]))
    members = []
    overloaded = {member.name for member in node.body if has_decorator(member, 'overload')}
    for member in node.body:
        match member:
            case ast.FunctionDef() if (
                    member.name in overloaded and not has_decorator(member, 'overload')):
                pass  # it implements the overloads, and is not one of them
            case ast.FunctionDef(name='__init__'):
                members += [*attributes(member, node), of_function(member, '    ')]
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                if not member.name.startswith('_') or member.name.startswith('__'):
                    members.append(of_function(member, '    '))
            case ast.Assign(targets=[ast.Name('__slots__')]):
                # Two subclasses with slots can not be the bases of one class.
                text = ast.unparse(member)
                names = [ast.unparse(name) for name in member.value.elts]
                members.append(text if len(text) + 4 <= WIDTH else
                               wrapped('__slots__ = ', names, '', '(', ')', '    ', always=True))
            case ast.Assign() if 'Enum' in bases:
                # A member of an enumeration is one by its value. An annotation would be of an
                # attribute of the members.
                members.append(ast.unparse(member))
            case ast.Assign() | ast.AnnAssign():
                [bound] = names_bound_by(member)
                members.append(declaration(member, bound, {}, '    '))
    head = f'class {node.name}({bases}):' if bases else f'class {node.name}:'
    return '\n    '.join([head, *members]) if members else f'{head} ...'


def has_decorator(node, name):
    return isinstance(node, ast.FunctionDef) and name in map(ast.unparse, node.decorator_list)


def attributes(init, node):
    """Those to which an annotated parameter is assigned as it is, and those that are annotated."""
    known = {arg.arg: arg.annotation for arg in (*init.args.args, *init.args.kwonlyargs)}
    declared = {target for member in node.body for target in names_bound_by(member)}
    for statement in init.body:
        match statement:
            case ast.Assign(targets=[ast.Attribute(ast.Name('self'), name)],
                            value=ast.Name(value)) if known.get(value):
                annotation = known[value]
            case ast.AnnAssign(target=ast.Attribute(ast.Name('self'), name)):
                annotation = statement.annotation
            case _:
                continue
        if not name.startswith('_') and name not in declared:
            yield f'{name}: {ast.unparse(annotation)}'


def of_function(node, indent):
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    returns = f' -> {ast.unparse(node.returns)}' if node.returns else ''
    # In a stub, what is async is awaited, and an async generator is not.
    is_awaited = isinstance(node, ast.AsyncFunctionDef) and not any(
        isinstance(inner, (ast.Yield, ast.YieldFrom)) for inner in ast.walk(node))
    text = wrapped(f'{"async " if is_awaited else ""}def {node.name}', parameters(node.args),
                   f'{returns}: ...', '(', ')', indent, always=True)
    return f'\n{indent}'.join([*(f'@{decorator}' for decorator in decorators), text])


def parameters(args):
    def parameter(arg, default=None):
        annotation = f': {ast.unparse(arg.annotation)}' if arg.annotation else ''
        if default is None:
            return arg.arg + annotation
        equals = ' = ' if annotation else '='
        simple = isinstance(default, (ast.Constant, ast.UnaryOp)) or (
            isinstance(default, ast.Tuple) and not default.elts)
        return arg.arg + annotation + equals + (ast.unparse(default) if simple else '...')

    positional = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(positional) - len(args.defaults)) + args.defaults
    found = [parameter(*pair) for pair in zip(positional, defaults, strict=True)]
    if args.posonlyargs:
        found.insert(len(args.posonlyargs), '/')
    if args.vararg:
        found.append('*' + parameter(args.vararg))
    elif args.kwonlyargs:
        found.append('*')
    found += [parameter(*pair) for pair in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    if args.kwarg:
        found.append('**' + parameter(args.kwarg))
    return found


def wrapped(start, items, end, opened, closed, indent='', always=False):
    """In one line if that is not too long, and else with a line for each item."""
    one_line = start + ((opened + ', '.join(items) + closed) if always else ', '.join(items)) + end
    if len(indent + one_line) <= WIDTH:
        return one_line
    inner = ''.join(f'{indent}    {item},\n' for item in items)
    return f'{start}{opened}\n{inner}{indent}{closed}{end}'


def main():
    stale = []
    for module in MODULES:
        stub = module.parent / f'{module.stem}-stubs' / '__init__.pyi'
        text = stub_of(module.read_text(encoding='utf-8'), module.name)
        if stub.is_symlink() or not stub.exists() or stub.read_text(encoding='utf-8') != text:
            stale.append(str(stub.relative_to(ROOT)))
            if sys.argv[1:] != ['--check']:
                stub.unlink(missing_ok=True)
                stub.write_text(text, encoding='utf-8')
    if sys.argv[1:] == ['--check'] and stale:
        sys.exit(f'Not what python .ci/stubs.py writes: {", ".join(stale)}')


if __name__ == '__main__':
    main()
