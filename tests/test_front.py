"What a visitor meets: README and the guides are short, and what they tell to type exists; the book is built and its links hold."

import ast
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec

import pytest
import sync

ROOT = sync.ROOT
sys.path.insert(0, str(ROOT / 'nbs' / 'book'))
import stage  # noqa: E402 (lies beside the book's settings)

PAGES = [ROOT / 'README.md', *sorted((ROOT / 'nbs' / 'guides').glob('*.md'))]
README = PAGES[0].read_text(encoding='utf-8')


def blocks(language: str) -> list:
    "Blocks of code of README and the guides, each with its page."
    fence = re.compile(rf'^```{language}\n(.*?)^```', re.M | re.S)
    return [pytest.param(b, id=f'{p.stem}-{i}') for p in PAGES for i, b in enumerate(fence.findall(p.read_text()))]


def typed() -> list[str]:
    "Every line of shell that README or a guide shows, without its comment."
    lines = [line.partition('  #')[0].strip() for b in blocks('sh') for line in b.values[0].splitlines()]
    return list(dict.fromkeys(line for line in lines if line))


def test_readme_has_at_most_a_thousand_words():
    assert len(README.split()) <= 1000


def test_readme_shows_a_picture_the_commands_and_a_list_first():
    first = README[: README.index('\n## ')]
    assert [first.index(part) for part in ('![', '```sh', '```python', '1 Star Wars')] == sorted(
        first.index(part) for part in ('![', '```sh', '```python', '1 Star Wars')
    )
    assert len(re.search(r'```python\n(.*?)```', first, re.S)[1].splitlines()) <= 10


@pytest.mark.parametrize('line', typed())
def test_a_command_that_is_shown_exists(line):
    words = shlex.split(line)
    if words[0] == 'make':
        assert re.search(rf'^{words[1]}:', (ROOT / 'Makefile').read_text(), re.M)
        return
    assert words[0] == 'molrec'
    command = words[1:3] if words[1] == 'data' else words[1:2]
    code = f'import sys; from molrec.cli.main import main; sys.exit(main({[*command, "--help"]!r}))'
    help = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert help.returncode == 0, help.stderr
    options = [w.partition('=')[0] for w in words if re.match(r'--?[a-z]', w)]
    assert [o for o in options if not re.search(rf'(?<![\w-]){o}\b', help.stdout)] == []


@pytest.mark.parametrize('code', blocks('python'))
def test_python_that_is_shown_compiles_and_its_imports_are_there(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert [a.name for a in node.names if not hasattr(module, a.name)] == []
        if isinstance(node, ast.Import):
            assert all(find_spec(a.name) for a in node.names)


def test_the_list_on_the_first_page_is_what_its_code_gives(capsys, monkeypatch):
    cells = json.loads((ROOT / 'nbs' / 'index.ipynb').read_text(encoding='utf-8'))['cells']
    (cell,) = (c for c in cells if 'Recommender.load' in ''.join(c['source']))
    assert 'skip-execution' in cell['metadata']['tags']
    monkeypatch.chdir(ROOT)
    exec(''.join(cell['source']), {})
    assert capsys.readouterr().out == ''.join(cell['outputs'][0]['text'])


# -- the book --


def test_every_page_is_in_the_book_and_its_links_lead_somewhere(tmp_path):
    assert stage.stage(tmp_path / 'book') == []
    pages = [p for p in (ROOT / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts]
    assert [p for p in pages if not (tmp_path / 'book' / p.relative_to(ROOT / 'nbs')).exists()] == []
    assert {p.stem for p in (ROOT / 'nbs' / 'guides').iterdir() if p.suffix not in stage.PICTURES} == set(stage.GUIDES)


def test_the_book_shows_neither_hidden_cells_nor_directives(tmp_path):
    nb = stage.staged_notebook('nbs/40_similarities/06_mol.ipynb')
    code = [c['source'] for c in nb['cells'] if c['cell_type'] == 'code']
    assert code and not [s for s in code if '#|' in s or 'nbdev_export' in s]


def test_a_link_keeps_its_page_or_leads_to_the_repository():
    page = 'nbs/60_search/00_search.ipynb'
    assert stage.address('../10_data/00_data.ipynb#A-Part', page) == '../10_data/00_data.ipynb#a-part'
    assert stage.address('../../LICENSE', page) == f'{stage.host()}/LICENSE'
    assert stage.address('https://arxiv.org', page) == 'https://arxiv.org'
    code = 'see `[a](b.md)` and\n```\n[a](b.md)\n```\n'
    assert stage.relink(code, page) == code


def test_a_link_that_leads_nowhere_is_said():
    stage.said.clear()
    stage.relink('[x](no-page.ipynb)', 'nbs/60_search/00_search.ipynb')
    assert stage.said == ['nbs/60_search/00_search.ipynb: no-page.ipynb leads nowhere']


def test_a_module_is_described_by_its_signatures():
    text = stage.module_page(ROOT / 'molrec' / 'base' / 'errors.py')
    assert (
        '# molrec.base.errors' in text and '```python\nclass ConfigError' in text and '00_base/02_errors.ipynb' in text
    )


@pytest.mark.skipif('MOLREC_SLOW' not in os.environ, reason='takes minutes: MOLREC_SLOW=1 runs it, after make book')
def test_the_book_is_built_without_a_warning_and_fetches_nothing(tmp_path):
    python = ROOT / '.venv-docs' / 'bin' / 'python'
    if not python.exists():
        pytest.skip('no Sphinx here: `make book` installs it in .venv-docs')
    stage.stage(tmp_path / 'source')
    build = [python, '-m', 'sphinx', '-q', '-W', '--keep-going', '-j', 'auto', tmp_path / 'source', tmp_path / 'book']
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / 'book' / '40_similarities' / '06_mol.html').read_text(encoding='utf-8')
    assert re.findall(r'<(?:script|link)[^>]*(?:src|href)="(?:https?:)?//', page) == []
    assert (tmp_path / 'book' / '_static' / 'tex-svg-full.js').stat().st_size > 1e6
