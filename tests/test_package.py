"The package as it is installed: its metadata in two files, what travels in a wheel and in an sdist, types, and what works in an empty folder."

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest
import sync
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = sync.ROOT
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))
META, EXTRAS = PROJECT['project'], PROJECT['project']['optional-dependencies']
slow = pytest.mark.skipif(not os.environ.get('MOLREC_SLOW'), reason='minutes: set MOLREC_SLOW=1')


def settings() -> configparser.SectionProxy:
    "nbdev's own file."
    cfg = configparser.ConfigParser(delimiters=['='])
    cfg.read(ROOT / 'settings.ini', encoding='utf-8')
    return cfg['DEFAULT']


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def locked() -> dict[str, str]:  # package, in small letters: version
    "What requirements.txt says."
    pins = [line.split('#')[0].split(';')[0] for line in lines((ROOT / 'requirements.txt').read_text())]
    return {name.lower(): version for name, version in (pin.strip().split('==') for pin in pins if pin.strip())}


# -- metadata --


def test_settings_ini_and_pyproject_agree():
    ini = settings()
    same = {
        'name': ini['lib_name'],
        'description': ini['description'],
        'keywords': ini['keywords'].split(),
        'dependencies': lines(ini['requirements']),
        'authors': [dict(name=ini['author'], email=ini['author_email'])],
        'scripts': dict([ini['console_scripts'].split('=')]),
    }
    assert {key: META[key] for key in same} == same
    assert EXTRAS['dev'] == lines(ini['dev_requirements'])
    assert META['requires-python'].startswith(f'>={ini["min_python"]}') and META['license'] == 'Apache-2.0'
    assert META['urls']['Source'] == ini['git_url'] and f'version = "{ini["version"]}"' not in META
    assert f'__version__ = "{ini["version"]}"' in (ROOT / 'molrec' / '__init__.py').read_text()


def test_the_lock_lies_within_the_ranges():
    wanted = [Requirement(line) for listed in (META['dependencies'], *EXTRAS.values()) for line in listed]
    lock = locked()
    # `make book` has a lock of its own; these are tested in environments of their own, where they are
    apart = ('docs', 'mlflow', 'wandb', 'bridges', 'onnx')
    docs = {Requirement(line).name.lower() for extra in apart for line in EXTRAS[extra]}
    named = {r.name.lower(): r.specifier for r in wanted if r.name != 'molrec' and r.name.lower() not in docs}
    assert [n for n, spec in named.items() if not SpecifierSet(str(spec)).contains(lock[n])] == []
    assert set(lock) == set(named)


def test_every_room_is_packaged():
    folders = {'.'.join(p.parent.relative_to(ROOT).parts) for p in (ROOT / 'molrec').rglob('__init__.py')}
    assert {*PROJECT['tool']['setuptools']['packages']} == folders | {'molrec.nbs.configs', 'molrec.nbs.experiments'}


# -- types --


def test_public_modules_are_typed():
    "The rooms of pyproject's [tool.mypy]; the package says by py.typed that it has types."
    said = subprocess.run([sys.executable, '-m', 'mypy'], cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 0, said.stdout
    assert (ROOT / 'molrec' / 'py.typed').is_file()


# -- wheel and sdist --


@pytest.fixture(scope='session')
def built(tmp_path_factory):
    "A wheel and an sdist, built from a copy of the checkout."
    copy, out = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('built')
    skipped = shutil.ignore_patterns('.*', 'reports', 'work', '_docs', 'build', 'dist', '*.egg-info', '__pycache__')
    shutil.copytree(ROOT, copy, ignore=skipped, dirs_exist_ok=True)
    code = (
        'import sys; from setuptools import build_meta as b; out = sys.argv[1]; b.build_sdist(out); b.build_wheel(out)'
    )
    done = subprocess.run([sys.executable, '-c', code, out], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(out.glob('*.whl')), next(out.glob('*.tar.gz'))


def test_a_wheel_holds_modules_rows_and_notebooks_and_nothing_else(built):
    names = {n for n in zipfile.ZipFile(built[0]).namelist() if '.dist-info/' not in n}
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / 'molrec').rglob('*.py')}
    rows = {f'molrec/{p.relative_to(ROOT)}' for p in (ROOT / 'nbs' / 'configs').rglob('*.yaml')}
    notebooks = {f'molrec/{p.relative_to(ROOT)}' for p in (ROOT / 'nbs' / 'experiments').glob('*.ipynb')}
    assert len(rows) > 100 and len(notebooks) >= 5
    assert names == modules | rows | notebooks | {'molrec/py.typed'}


def test_an_sdist_holds_what_the_modules_are_made_from(built):
    names = {n.split('/', 1)[1] for n in tarfile.open(built[1]).getnames() if '/' in n}
    kept = {str(p.relative_to(ROOT)) for p in (ROOT / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts}
    kept |= {str(p.relative_to(ROOT)) for p in (ROOT / 'tests').rglob('*.py')}
    assert kept | {'settings.ini', 'pyproject.toml', 'requirements.txt', 'Makefile', 'LICENSE'} <= names


def test_the_wheel_says_what_it_needs(built):
    text = next(
        zipfile.ZipFile(built[0]).read(n).decode()
        for n in zipfile.ZipFile(built[0]).namelist()
        if n.endswith('METADATA')
    )
    for line in ('Requires-Python: <3.15,>=3.11', 'License-Expression: Apache-2.0', 'Requires-Dist: torch>=2.6'):
        assert line in text
    assert 'einops' not in text and 'Provides-Extra: report' in text


# -- what is installed, in an empty folder --


@pytest.fixture(scope='session')
def away(built, tmp_path_factory):
    "The wheel installed by itself, and an empty folder with data of one's own; no checkout is in sight."
    site, folder = tmp_path_factory.mktemp('site'), tmp_path_factory.mktemp('empty')
    pip = [sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--target', site, built[0]]
    subprocess.run(pip, check=True, capture_output=True)
    films = [f'film {n}' for n in range(30)]
    rows = [(f'user {u}', films[(u * 7 + k) % 30], 1_600_000_000 + 1000 * k + u) for u in range(40) for k in range(12)]
    text = 'user_id,item_id,timestamp\n' + ''.join(f'{u},{i},{t}\n' for u, i, t in rows)
    (folder / 'plays.csv').write_text(text)

    def typed(*words: str, code: str = '') -> str:
        "What a command says, or a line of Python."
        call = ['-c', code] if code else ['-m', 'molrec', *words]
        env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'MOLREC_DATA')}
        env |= dict(PYTHONPATH=str(site))
        done = subprocess.run([sys.executable, *call], cwd=folder, env=env, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, f'{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}'
        assert str(ROOT) not in done.stdout
        return done.stdout

    return folder, typed


small = '-p epochs 1 -p dim 8 -p similarity mol -p n_query 2 -p n_item 2 -p width 8 -p head_width 8 -p max_length 20'.split()


@pytest.fixture(scope='session')
def trained(away):
    "A run of the installed package on data of one's own."
    folder, typed = away
    typed('run', 'plays.csv', *small)
    return folder, typed, next((folder / 'reports' / 'runs').iterdir())


def test_data_are_checked_and_memory_is_planned_from_a_wheel(away):
    folder, typed = away
    assert re.search(r'user_ids +40', typed('data', 'check', 'plays.csv'))
    assert '1,000 items' in typed('plan', '--items', '1000')


def test_the_doctor_of_a_wheel_says_what_a_report_of_a_fault_needs(away):
    told = json.loads(away[1]('doctor', '--json'))
    names = {c['name'] for c in told['checks']}
    assert {'molrec', 'python', 'platform', 'gpu', 'compiler', 'loops', 'extra report', 'checkout', 'cache'} <= names
    assert told['environment']['torch'] and 'commit' in told['code']


def test_a_run_of_a_wheel_is_kept_in_the_current_folder(trained):
    folder, typed, run = trained
    assert (run / 'run.ipynb').is_file() and str(folder) not in (run / 'run.ipynb').read_text()
    assert run.name[:40] in typed('runs')
    assert 'film' in typed('search', run.name, '--user', 'user 3', '-k', '5')
    typed('recommend', run.name, '--all', '--out', 'lists.csv', '-k', '5')
    assert (folder / 'lists.csv').read_text().count('\n') > 40


def test_a_row_that_came_with_the_wheel_is_found_by_its_name(away):
    code = "from molrec.cli.place import place_here, row_file; print(row_file('ml-1m/sasrec-dot', place_here()).read_text())"
    assert away[1](code=code) == (ROOT / 'nbs' / 'configs' / 'ml-1m' / 'sasrec-dot.yaml').read_text() + '\n'


@slow
def test_the_report_of_a_wheel_is_written_in_the_current_folder(trained):
    folder, typed, run = trained
    typed('report')
    assert (folder / 'reports' / 'results.html').is_file()


@slow
def test_retrieval_and_bench_of_a_wheel_write_in_the_current_folder(trained):
    folder, typed, run = trained
    typed('retrieval', '--scale', 'smoke')
    assert {p.name for p in (folder / 'reports' / 'retrieval').glob('*.json')} >= {'recall-plays.json', 'pools.json'}
    typed('bench', 'one-query', '--quick')
    assert list((folder / 'reports' / 'bench').glob('*.csv'))
