"""A copy of the notebooks that Sphinx can bind: `python nbs/book/stage.py FOLDER`.

Hidden cells and nbdev's directives are dropped, rooms become parts in the order of nbs/index.ipynb, the report's tables
and a page per module are added, and links that leave the book lead to the repository."""

import ast
import configparser
import json
import posixpath
import re
import shutil
import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
GUIDES = 'own_data serve demo other_libraries scale_out add_a_part differences costs reading cite'.split()
TABLES = (
    'reports/tables/results.md reports/tables/factors.md reports/tables/ten-rows.md reports/tables/mol-against-dot.md'
)
TABLES = f'{TABLES} reports/tables/protocol.md reports/retrieval/README.md'.split()
PICTURES = '.png', '.svg'
fence = re.compile(
    r'(^ *(?P<f>```+|~~~+).*?^ *(?P=f)\s*?$|(?P<t>`+)[^`\n]+(?P=t)|\$\$.*?\$\$)', re.M | re.S
)  # left as it is
link = re.compile(r'(\]\(|\b(?:src|href)=")([^)"\s]+)')  # the address of a Markdown or HTML link
directive = re.compile(r'^#\|\s*(.*)\n?', re.M)  # nbdev's lines
said = []  # links that lead nowhere


def host() -> str:
    "Where the repository's files are read."
    cfg = configparser.ConfigParser(delimiters=['='])
    cfg.read(ROOT / 'settings.ini', encoding='utf-8')
    return f'{cfg["DEFAULT"]["git_url"]}/blob/{cfg["DEFAULT"]["branch"]}'


def page_of(path: str) -> str | None:  # place in the book; None: it is not in it
    "Where a file of the repository stands in the book."
    if re.fullmatch(r'nbs/(index|(\d\d_\w+|guides|experiments)/\w+)\.(ipynb|md)', path):
        return path.removeprefix('nbs/')
    picture = path.endswith(PICTURES) and path.startswith(('reports/', 'nbs/guides/'))
    return path.removeprefix('nbs/') if picture or path in tables() else None


def tables() -> list[str]:
    "The report's tables and the bench's, as far as they are there."
    bench = sorted(str(p.relative_to(ROOT)) for p in (ROOT / 'reports/bench').glob('*.md'))
    return [t for t in [*TABLES, *bench] if (ROOT / t).exists()]


def anchor(part: str) -> str:
    "A heading's anchor as Jupyter writes it, as Sphinx does."
    return re.sub(r'[^\w-]', '', unquote(part).lower())


@cache
def headings(page: str) -> set[str]:
    "Anchors of a notebook's headings."
    cells = json.loads((ROOT / page).read_text(encoding='utf-8'))['cells']
    text = '\n\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    return {f'#{anchor(h.strip().replace(" ", "-"))}' for h in re.findall(r'^#+ +(.*)$', text, re.M)}


def check_part(page: str, found: str, part: str) -> None:
    "Is there such a heading?"
    if page.endswith('.ipynb') and part not in headings(page):
        said.append(f'{found if ":" in found else f"{page}: {found}"} names no heading of its page')


def address(found: str, page: str, *others: str) -> str:  # others: folders from which a link may lead too
    "An address on `page`, a path of the repository, as the book needs it."
    if re.match(r'[a-z][a-z+.-]*:|/', found):
        return found
    path, _, part = found.partition('#')
    part = part and f'#{anchor(part)}'
    if not path:
        check_part(page, found, part)
        return part
    seen = [posixpath.normpath(posixpath.join(d, path)) for d in (posixpath.dirname(page), *others)]
    path = next((p for p in seen if (ROOT / p).exists()), seen[0])
    if not (ROOT / path).exists():
        said.append(f'{page}: {found} leads nowhere')
    if not (place := page_of(path)):
        return f'{host()}/{path}'
    if part and path.endswith('.ipynb'):
        check_part(path, f'{page}: {found}', part)
    shown = posixpath.relpath(place, posixpath.dirname(page_of(page)) or '.')
    return shown + part


def relink(text: str, page: str, *others: str) -> str:
    "Markdown with its links turned; code and formulas stay."
    parts, at = [], 0
    turn = lambda t: link.sub(lambda m: m[1] + address(m[2], page, *others), t)
    for kept in fence.finditer(text):
        parts += [turn(text[at : kept.start()]), kept[0]]
        at = kept.end()
    return ''.join([*parts, turn(text[at:])])


def staged_cell(cell: dict, page: str) -> dict | None:  # None: not shown
    "A cell as the book shows it."
    source = ''.join(cell['source'])
    told = {d.strip() for d in directive.findall(source)} if cell['cell_type'] == 'code' else set()
    if 'hide' in told or any(d.startswith('default_exp') for d in told):
        return None
    if cell['cell_type'] == 'markdown':
        return cell | dict(source=relink(source, page))
    for output in cell['outputs']:
        if 'text/markdown' in output.get('data', {}):
            output['data']['text/markdown'] = relink(''.join(output['data']['text/markdown']), page, 'reports/tables')
    source = directive.sub('', source).strip('\n')
    tags = ['remove-input'] if 'echo: false' in told else []
    return cell | dict(source=source, metadata=dict(tags=tags)) if source or cell['outputs'] else None


def staged_notebook(page: str, contents: list[str] = ()) -> dict:
    "A notebook of the book; `contents`: pages that it leads to in the sidebar."
    nb = json.loads((ROOT / page).read_text(encoding='utf-8'))
    nb['cells'] = [c for cell in nb['cells'] if (c := staged_cell(cell, page))]
    if contents:
        nb['cells'].append(dict(cell_type='markdown', id='contents', metadata={}, source=toctree(contents)))
    python = dict(name='python', pygments_lexer='python', file_extension='.py')
    nb['metadata'] = dict(
        kernelspec=dict(name='python3', display_name='Python', language='python'), language_info=python
    )
    return nb


def toctree(entries: list[str], caption: str = '', depth: int = 1) -> str:
    "A part of the book."
    head = f':caption: {caption}\n' if caption else ''
    return f'```{{toctree}}\n:hidden:\n:maxdepth: {depth}\n{head}\n' + '\n'.join(entries) + '\n```\n'


def rooms() -> list[str]:
    "Folders of the rooms, in the reading order of nbs/index.ipynb, and those that it leaves out."
    named = re.findall(r'\]\((\d\d_\w+)/00_\w+\.ipynb\)', (ROOT / 'nbs/index.ipynb').read_text(encoding='utf-8'))
    found = sorted(p.name for p in (ROOT / 'nbs').glob('[0-9][0-9]_*') if p.is_dir())
    return list(dict.fromkeys([*(n for n in named if n in found), *found]))


def write(folder: Path, place: str, text: str) -> None:
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    (folder / place).write_text(text, encoding='utf-8')


def write_page(folder: Path, page: str, contents: list[str] = ()) -> None:
    "A notebook or a page of Markdown."
    if page.endswith('.ipynb'):
        return write(folder, page_of(page), json.dumps(staged_notebook(page, contents)))
    write(folder, page_of(page), headed(relink((ROOT / page).read_text(encoding='utf-8'), page), page))


def headed(text: str, page: str) -> str:
    "A page with a heading: the report's tables have none of their own."
    if text.lstrip().startswith('# '):
        return text
    kind = 'measured' if page.startswith('reports/bench') else 'tables'
    name = posixpath.basename(page).removesuffix('.md').replace('-', ' ').capitalize()
    return f'# {name}, {kind}\n\n{text}'


# -- a page per module --


def signature(lines: list[str], node: ast.AST) -> str:
    "A definition as far as its body, with the comments on its arguments."
    first = node.body[0].lineno - 1
    return '\n'.join(lines[node.lineno - 1 : first] or [lines[node.lineno - 1].split(': ')[0]])


def described(lines: list[str], node: ast.AST, mark: str, name: str) -> str:
    "A function or a class: what it takes, and what it does."
    words = (ast.get_docstring(node) or '').split('\n\n')[0]
    code = signature(lines, node)
    indent = len(code) - len(code.lstrip())
    code = '\n'.join(line[indent:] for line in code.splitlines())
    return f'{mark} {name}\n\n```python\n{code}\n```\n\n' + (f'```text\n{words}\n```\n\n' if words else '')


def module_page(module: Path) -> str:
    "Everything public of a module."
    text = module.read_text(encoding='utf-8')
    tree, lines = ast.parse(text), text.splitlines()
    name = '.'.join(module.relative_to(ROOT).with_suffix('').parts)
    page = re.search(r'File to edit: .*?nbs/(\S+\.ipynb)', text)
    parts = [f'# {name}\n\n', f'Explained, step by step, in [its notebook](../../{page[1]}).\n\n' if page else '']
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith('_'):
            parts.append(described(lines, node, '##', node.name))
        for inner in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(inner, ast.FunctionDef) and (inner.name == '__init__' or not inner.name.startswith('_')):
                parts.append(described(lines, inner, '###', f'{node.name}.{inner.name}'))
    return ''.join(parts)


def write_api(folder: Path, order: list[str]) -> list[str]:  # the pages of rooms
    "The reference: a page per module, under a page per room."
    pages = []
    for room in [r.partition('_')[2] for r in order]:
        modules = [m for m in sorted((ROOT / 'molrec' / room).glob('*.py')) if not m.name.startswith('_')]
        for module in modules:
            write(folder, f'api/{room}/{module.stem}.md', module_page(module))
        if modules:
            listed = '\n'.join(f'- [{m.stem}]({room}/{m.stem}.md)' for m in modules)
            contents = toctree([f'{room}/{m.stem}' for m in modules])
            write(folder, f'api/{room}.md', f'# molrec.{room}\n\n{listed}\n\n{contents}')
            pages.append(f'api/{room}')
    return pages


# -- all of it --


def notebooks_of(room: str) -> list[str]:
    return [str(p.relative_to(ROOT)) for p in sorted((ROOT / 'nbs' / room).glob('*.ipynb'))]


def stage(folder: Path) -> list[str]:  # links that lead nowhere
    "Write the whole copy."
    said.clear()
    shutil.rmtree(folder, ignore_errors=True)
    order = rooms()
    for room in order:
        first, *others = notebooks_of(room)
        write_page(folder, first, [Path(p).stem for p in others])
        for page in others:
            write_page(folder, page)
    guides = [next(p for p in (f'nbs/guides/{g}.md', f'nbs/guides/{g}.ipynb') if (ROOT / p).exists()) for g in GUIDES]
    for page in [*guides, *notebooks_of('experiments'), *tables()]:
        write_page(folder, page)
    named = lambda pages: [posixpath.splitext(page_of(p))[0] for p in pages]
    parts = [
        toctree(named(guides), 'Guides'),
        toctree([f'{r}/{Path(notebooks_of(r)[0]).stem}' for r in order], 'Rooms', 2),
        toctree(named([*notebooks_of('experiments'), *tables()]), 'Results'),
        toctree(write_api(folder, order), 'Reference', 2),
    ]
    index = staged_notebook('nbs/index.ipynb')
    index['cells'].append(dict(cell_type='markdown', id='contents', metadata={}, source='\n'.join(parts)))
    write(folder, 'index.ipynb', json.dumps(index))
    copy_files(folder)
    return said


def copy_files(folder: Path) -> None:
    "Sphinx's settings, and every picture that a page of the book shows."
    (folder / '_static').mkdir()
    shutil.copyfile(HERE / 'conf.py', folder / 'conf.py')
    shutil.copyfile(HERE / 'book.css', folder / '_static' / 'book.css')
    for pattern in ('reports/**/*', 'nbs/guides/*'):
        for picture in ROOT.glob(pattern):
            path = str(picture.relative_to(ROOT))
            if picture.suffix in PICTURES and '/.' not in path:
                (folder / page_of(path)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(picture, folder / page_of(path))


if __name__ == '__main__':
    if len(sys.argv) != 2:
        raise SystemExit('usage: python nbs/book/stage.py FOLDER')
    wrong = stage(Path(sys.argv[1]))
    print('\n'.join(wrong), end='\n' if wrong else '')
    sys.exit(bool(wrong))
