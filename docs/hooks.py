"""Makes a site of pages whose links lead to files of the repository.

The pages are read on a code host too, so a link between them is the path of a file. What is not in
docs/ becomes a page of the site if PAGES has it. Links to all other files lead to the repository.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
LINK = re.compile(r'(\]\(|^\[[^]]*\]: )([^)\s]+)', re.MULTILINE)
PAGES = {
    'README.md': 'index.md',
    'CHANGELOG.md': 'changelog.md',
    'SECURITY.md': 'security.md',
    'layers/README.md': 'layers/stacking.md',
    **{f'layers/{path.parent.name}/README.md': f'layers/{path.parent.name}.md'
       for path in sorted(ROOT.glob('layers/*/README.md'))},
    **{f'benchmarks/published/{path.name}': f'images/{path.name}'
       for path in sorted(ROOT.glob('benchmarks/published/*.svg'))},
}
SOURCES = {page: path for path, page in PAGES.items() if page != 'index.md'}


def on_files(files, config):
    for page, path in SOURCES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    here = page.file.src_uri
    folder = posixpath.dirname(SOURCES.get(here, f'docs/{here}'))
    base = f'{config.repo_url}/blob/HEAD/'

    def to_page(link):
        path, mark, fragment = link.partition('#')
        if path.startswith(base):
            path = path.removeprefix(base)
        elif ':' in path or not path:
            return link
        else:
            path = posixpath.normpath(posixpath.join(folder, path))
        if path in PAGES:
            target = PAGES[path]
        elif path.startswith('docs/'):
            target = path.removeprefix('docs/')
        elif (ROOT / path).exists():
            return base + path + mark + fragment
        else:
            return link  # mkdocs tells that it leads nowhere.
        return posixpath.relpath(target, posixpath.dirname(here) or '.') + mark + fragment

    # Code has no links.
    return ''.join(
        part if part.startswith('```') else LINK.sub(
            lambda match: match[1] + to_page(match[2]), part)
        for part in re.split(r'(^```.*?^```$)', markdown, flags=re.MULTILINE | re.DOTALL))
