"The checks of `make test` find what they are for: each kind of fault is planted in a small copy of the project."

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sync

ROOT = sync.ROOT
PAGE = '00_base/02_errors.ipynb'


@pytest.fixture
def project(tmp_path):
    "One notebook, its module and the index: a project that is in order."
    shutil.copy(ROOT / 'settings.ini', tmp_path)
    for name in (PAGE, 'index.ipynb', 'readme_config.py'):
        (tmp_path / 'nbs' / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / 'nbs' / name, tmp_path / 'nbs' / name)
    sync.command('nbdev_export', cwd=tmp_path)
    (tmp_path / 'README.md').write_text(sync.readme(tmp_path), encoding='utf-8')
    return tmp_path


def edit(notebook: Path, change) -> None:
    "Change a notebook and write it back the way nbdev does."
    nb = json.loads(notebook.read_text(encoding='utf-8'))
    change(nb)
    notebook.write_text(json.dumps(nb, sort_keys=True, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')


def exported(nb: dict) -> dict:
    "The first cell that goes into the module and defines something."
    return next(c for c in nb['cells'] if '#| export' in ''.join(c['source']) and 'class ' in ''.join(c['source']))


def test_a_project_in_order_passes(project):
    assert sync.check_export(project) == sync.check_clean(project) == []


def test_a_module_edited_by_hand_is_found(project):
    module = project / 'molrec' / 'base' / 'errors.py'
    module.write_text(module.read_text() + '\n')
    (said,) = sync.check_export(project)
    assert said.startswith('molrec/base/errors.py differs from its notebook')


def test_a_notebook_not_exported_is_found(project):
    edit(project / 'nbs' / PAGE, lambda nb: exported(nb).update(source=exported(nb)['source'] + ['\nanswer = 42']))
    assert any('molrec/base/errors.py' in s and 'answer' in s for s in sync.check_export(project))


def test_modules_without_notebook_and_the_reverse_are_found(project):
    (project / 'molrec' / 'base' / 'errors.py').rename(project / 'molrec' / 'base' / 'other.py')
    assert {s.split(':')[0] for s in sync.check_export(project)} == {
        'molrec/base/other.py has no notebook',
        'molrec/base/errors.py is missing',
    }


def test_execution_counts_are_found_and_parameters_tags_are_kept(project):
    page = project / 'nbs' / PAGE
    edit(page, lambda nb: nb['cells'][0].update(metadata={'tags': ['parameters']}))
    assert sync.check_clean(project) == []
    edit(page, lambda nb: exported(nb).update(execution_count=7))
    (said,) = sync.check_clean(project)
    assert said.startswith(f'nbs/{PAGE} is not clean')


@pytest.fixture
def reported(project):
    "The same with the files that the first page is made from."
    for name in (
        'tables/results-summary.md',
        'tables/mol-against-dot.csv',
        'bench/*.csv',
        'bench/*.json',
        'kernels/gpu*',
    ):
        for file in (ROOT / 'reports').glob(name):
            (project / 'reports' / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, project / file.relative_to(ROOT))
    return project


def test_a_readme_left_behind_is_found(project):
    assert sync.check_readme(project) == []
    (project / 'README.md').write_text('# By hand')
    assert sync.check_readme(project) == ['README.md is not what nbs/index.ipynb gives: run make readme']


@pytest.mark.parametrize('name', ['tables/results-summary.md', 'bench/hundred-million.json', 'kernels/gpu.csv'])
def test_a_figure_left_behind_is_found(reported, name):
    assert sync.check_readme(reported) == []
    file = reported / 'reports' / name
    file.write_text(file.read_text().replace('0.2', '0.9').replace('1.9', '4.9').replace('137.6', '150'))
    (said,) = sync.check_readme(reported)
    assert said.startswith('nbs/index.ipynb, cell ') and said.endswith('make readme')


def test_the_command_says_what_is_wrong_and_exits_1():
    said = subprocess.run([sys.executable, ROOT / 'tests' / 'sync.py', 'everything'], capture_output=True, text=True)
    assert said.returncode == 1 and 'export|clean|readme' in said.stderr
