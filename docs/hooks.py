"""Makes a site of pages whose links lead to files of the repository.

The pages are read on a code host too, so a link between them is the path of a file. What is not in
docs/ becomes a page of the site if PAGES has it. Links to all other files lead to the repository.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
PAGES = {
    'CHANGELOG.md': 'changelog.md',
    'SECURITY.md': 'security.md',
    'layers/README.md': 'layers/stacking.md',
    **{f'layers/{path.parent.name}/README.md': f'layers/{path.parent.name}.md'
       for path in sorted(ROOT.glob('layers/*/README.md'))},
    **{f'benchmarks/published/{path.name}': f'images/{path.name}'
       for path in sorted(ROOT.glob('benchmarks/published/*.svg'))},
}
SOURCES = {page: path for path, page in PAGES.items()}


def on_files(files, config):
    for path, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    here = page.file.src_uri
    folder = posixpath.dirname(SOURCES.get(here, f'docs/{here}'))

    def link(match):
        path, mark, fragment = match[2].partition('#')
        path = posixpath.normpath(posixpath.join(folder, path))
        target = PAGES.get(path, path.removeprefix('docs/') if path.startswith('docs/') else None)
        if path == 'README.md':
            target = 'index.md'
        if target is not None:
            return (f'{match[1]}({posixpath.relpath(target, posixpath.dirname(here) or ".")}'
                    f'{mark}{fragment})')
        if not (ROOT / path).exists():
            return match[0]  # mkdocs tells that it leads nowhere.
        kind = 'raw' if match[1].startswith('!') else 'blob'
        return f'{match[1]}({config.repo_url}/{kind}/HEAD/{path}{mark}{fragment})'

    # Code has no links.
    return ''.join(
        part if part.startswith('```') else re.sub(
            r'(!?\[[^]]*\])\((?!#|[a-z]+:)([^)\s]*)\)', link, part)
        for part in re.split(r'(^```.*?^```$)', markdown, flags=re.MULTILINE | re.DOTALL))
