"What holds the project together and has no page of its own: pins, notebooks, the order of modules, README, continuous integration."

import ast
import configparser
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import sync
import yaml

ROOT = sync.ROOT
NOTEBOOKS = sorted(
    p for p in (ROOT / 'nbs').rglob('*.ipynb') if not any(part.startswith('.') for part in p.relative_to(ROOT).parts)
)
EXPERIMENTS = [p for p in NOTEBOOKS if p.parent.name == 'experiments']
MODULES = sorted(p for p in (ROOT / 'molrec').rglob('*.py') if not p.name.startswith('_'))
longest = {  # in lines; reference, kernel and agreement of a Triton page are read side by side
    'molrec.kernels.scan': 600,
    'molrec.kernels.mol_score': 700,
    'molrec.kernels.hstu_attention': 800,
    'molrec.kernels.mol_loss': 1000,
    'molrec.settings.parts': 700,  # the declarations of all pages, one below the other
}
MACHINE_PATH = re.compile(r'(?<![\w.~+/-])/(?:home|root|tmp|work|Users|var/folders)/\w')

TRIED = (
    'torch==2.13.0 triton==3.7.1 numpy==2.4.6 pandas==3.1.1 pyarrow==26.0.1 matplotlib==3.11.2 nbdev==2.4.14 execnb==0.1.18 '
    'fastcore==1.14.5 ghapi==1.1.1 papermill==2.7.0 nbconvert==7.17.2 ipykernel==7.4.0 jupyterlab==4.6.6'
).split()


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def every(paths):
    return pytest.mark.parametrize('path', paths, ids=name)


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding='utf-8'))


def text(lines) -> str:
    return lines if isinstance(lines, str) else ''.join(lines)


def pins(lines) -> list[str]:
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith('#')]


def required() -> list[str]:
    return pins((ROOT / 'requirements.txt').read_text().splitlines())


def settings() -> configparser.SectionProxy:
    cfg = configparser.ConfigParser(delimiters=['='])
    cfg.read(ROOT / 'settings.ini', encoding='utf-8')
    return cfg['DEFAULT']


# -- versions --


def test_every_requirement_is_an_exact_pin():
    form = re.compile(r'[A-Za-z0-9-]+==\d[\w.]*(;sys_platform=="linux")?')
    assert [r for r in required() if not form.fullmatch(r)] == []


def test_the_versions_tried_together_are_the_ones_required():
    assert set(TRIED) - {r.split(';')[0] for r in required()} == set()


def test_environment_yml_takes_its_versions_from_requirements_txt():
    conda = yaml.safe_load((ROOT / 'environment.yml').read_text())['dependencies']
    assert conda == [f'python={settings()["min_python"]}', 'pip', {'pip': ['-r requirements.txt', '-e .']}]


def test_every_requirement_of_the_book_is_an_exact_pin():
    assert [
        r
        for r in pins((ROOT / 'requirements-docs.txt').read_text().splitlines())
        if not re.fullmatch(r'[\w.-]+==[\w.]+', r)
    ] == []


@pytest.mark.parametrize('pin', required())
def test_the_environment_has_the_version_that_is_required(pin):
    package, version = pin.split(';')[0].split('==')
    if 'linux' in pin and sys.platform != 'linux':
        pytest.skip('required on Linux alone')
    assert metadata.version(package).split('+')[0] == version


# -- notebooks --


@every(NOTEBOOKS)
def test_no_notebook_stores_an_error(path):
    outputs = [o for c in read(path)['cells'] for o in c.get('outputs', [])]
    assert [o['evalue'] for o in outputs if o['output_type'] == 'error'] == []


@every(NOTEBOOKS)
def test_no_output_names_a_place_on_the_machine_that_made_it(path):
    shown = [
        text(t)
        for c in read(path)['cells']
        for o in c.get('outputs', [])
        for t in [o.get('text', ''), *(v for k, v in o.get('data', {}).items() if k.startswith('text'))]
    ]
    assert [t[m.start() : m.start() + 60] for t in shown for m in MACHINE_PATH.finditer(t)] == []


@every(NOTEBOOKS)
def test_a_notebook_is_small_enough_to_read_in_a_browser(path):
    assert path.stat().st_size < 4e6


@every([p for p in NOTEBOOKS if p not in EXPERIMENTS])
def test_code_was_run_where_it_shows(path):
    "A page of lessons with no output at all was never executed."
    cells = [c for c in read(path)['cells'] if c['cell_type'] == 'code' and not text(c['source']).startswith('#|')]
    assert not cells or any(c['outputs'] for c in cells)


def test_there_are_experiments():
    assert EXPERIMENTS


@every(EXPERIMENTS)
def test_an_experiment_has_one_cell_of_parameters(path):
    tagged = [c for c in read(path)['cells'] if 'parameters' in c['metadata'].get('tags', [])]
    assert len(tagged) == 1


@every(EXPERIMENTS)
def test_an_experiment_has_no_nbdev_directives(path):
    "papermill does not know them: a cell marked `eval: false` would run."
    assert [
        text(c['source'])
        for c in read(path)['cells']
        if c['cell_type'] == 'code' and re.search(r'^#\|', text(c['source']), re.M)
    ] == []


# -- modules --


ROOMS = (
    'base settings data metrics records kernels embeddings encoders similarities training tasks search report bench cli'
).split()  # a room uses those before it, and of its own the pages before


def notebook_of(module: Path) -> Path:
    "The notebook that a module is made from."
    return Path(re.search(r'File to edit: .*?(nbs/\S+\.ipynb)', module.read_text(encoding='utf-8'))[1])


def place(module: Path) -> tuple:
    "Where a module stands: its room in the order of rooms, its page in the order of pages."
    return ROOMS.index(module.parent.name), notebook_of(module).name


def dotted(module: Path) -> str:
    return '.'.join(module.relative_to(ROOT).with_suffix('').parts)


def imported(module: Path) -> set[str]:
    "Names of molrec's own modules that `module` imports, at its top or anywhere inside."
    found = set()
    for node in ast.walk(ast.parse(module.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        if isinstance(node, ast.ImportFrom):
            base = '.'.join(dotted(module).split('.')[: -node.level]) if node.level else ''
            base = '.'.join(p for p in (base, node.module) if p)
            found |= {base} | {f'{base}.{a.name}' for a in node.names}
    return found


def test_every_folder_of_modules_is_a_room():
    assert {m.parent.name for m in MODULES} <= set(ROOMS)


@every(MODULES)
def test_a_page_and_its_module_are_in_the_same_room(path):
    assert notebook_of(path).parent.name.partition('_')[2] == path.parent.name


@every(MODULES)
def test_a_module_imports_only_what_comes_before_it(path):
    order = {dotted(m): place(m) for m in MODULES}
    later = {m for m in imported(path) if m in order and m != dotted(path) and order[m] >= order[dotted(path)]}
    assert later == set()


@every(MODULES)
def test_a_module_is_short_enough_to_read(path):
    said = path.read_text(encoding='utf-8')
    written = re.sub(r'^__all__ = .*?\]$|^# (%%|AUTO).*?$', '', said, flags=re.S | re.M)  # the rest is made by nbdev
    assert len(said.splitlines()) <= longest.get(dotted(path), 460)
    for string in (n for n in ast.walk(ast.parse(said)) if isinstance(n, ast.Constant) and isinstance(n.value, str)):
        if 'static ' in string.value or 'INLINE ' in string.value or ';\n' in string.value:  # C, laid out by hand
            written = written.replace(ast.get_source_segment(said, string), '')
    assert [line for line in written.splitlines() if len(line) > 120] == []


PAGES = [p for p in NOTEBOOKS if p.parent.name[:2].isdigit()]


@every(sorted({p.parent for p in PAGES}))
def test_a_room_opens_with_a_page_that_leads_to_all_others(path):
    opening = path / f'00_{path.name.partition("_")[2]}.ipynb'
    said = ''.join(text(c['source']) for c in read(opening)['cells'] if c['cell_type'] == 'markdown')
    assert [p.name for p in sorted(path.glob('*.ipynb')) if p != opening and f']({p.name})' not in said] == []


@every(MODULES)
def test_nothing_that_can_run_code_is_loaded(path):
    "pickle in any of its forms: the module itself, torch.load, numpy's and pandas' doors to it."
    tree = ast.parse(path.read_text(encoding='utf-8'))
    calls = [ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Call)]
    pickled = [
        c
        for c in calls
        if re.match(r'(torch\.load|(pd|pandas)\.read_pickle|joblib\.load)\(', c) or 'allow_pickle=True' in c
        if 'weights_only=True' not in c  # tensors and plain containers; the reader stops at anything else
    ]
    assert pickled == [] and imported(path).isdisjoint({'pickle', 'cloudpickle', 'dill', 'joblib', 'shelve', 'marshal'})


def test_import_molrec_costs_nothing():
    seen = "import sys, time; t = time.perf_counter(); import molrec; print(time.perf_counter() - t, 'torch' in sys.modules)"
    took, torch = subprocess.run(
        [sys.executable, '-c', seen], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert float(took) < 0.2 and torch == 'False'


# -- reports --


def test_no_record_or_table_names_a_place_on_the_machine_that_made_it():
    files = [
        p
        for p in (ROOT / 'reports').rglob('*')
        if p.suffix in ('.json', '.md', '.csv', '.html', '.svg', '.ipynb') and not p.name.startswith('.')
    ]  # hidden: of a run that has not ended
    assert [name(p) for p in files if MACHINE_PATH.search(p.read_text(encoding='utf-8'))] == []


@every(sorted((ROOT / 'reports' / 'runs').glob('*/run.ipynb')))
def test_the_notebook_of_a_record_is_of_that_record(path):
    notebook, record = read(path), json.loads(path.with_name('record.json').read_text())
    assert path.stat().st_size < 3e5 and not [
        o for c in notebook['cells'] for o in c.get('outputs', []) if o['output_type'] == 'error'
    ]
    said = ''.join(text(c['source']) for c in notebook['cells'])
    assert f'command = {json.dumps(record["command"])}' in said and f'seed = {record["seed"]}' in said


# -- README, continuous integration --


def test_readme_is_what_the_index_gives():
    assert sync.check_readme() == []


def test_readme_and_contributing_point_at_what_exists():
    link = re.compile(r'\]\(([^)\s#]+)[^)]*\)')
    found = {
        (page, a)
        for page in ('README.md', 'CONTRIBUTING.md')
        for a in link.findall((ROOT / page).read_text(encoding='utf-8'))
    }
    assert {(page, a) for page, a in found if not re.match(r'[a-z]+:', a) and not (ROOT / a).exists()} == set()


def commands() -> list[str]:
    "The commands of README's first block of code, without their comments."
    block = re.search(r'```sh\n(.*?)```', (ROOT / 'README.md').read_text(encoding='utf-8'), re.S)[1]
    return [line.split('#')[0].strip() for line in block.splitlines()]


def test_readme_starts_with_its_two_commands():
    assert commands() == ['make report', 'make test']
    assert (ROOT / 'README.md').read_text(encoding='utf-8').index('make report') < 600


def test_continuous_integration_runs_readmes_test_command():
    run = ROOT / '.ci' / 'run'
    assert os.access(run, os.X_OK) and run.read_text().splitlines()[-1] == commands()[-1]


@pytest.mark.parametrize('target', 'report test matrix lab readme book setup clean help'.split())
def test_make_lists_its_commands(target):
    said = subprocess.run(['make', '-s'], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.search(rf'^  make {target}\b', said, re.M)


def test_make_refuses_an_unknown_scale():
    said = subprocess.run(['make', '-s', 'report', 'SCALE=huge'], cwd=ROOT, capture_output=True, text=True)
    assert said.returncode and 'smoke, quick or paper' in said.stderr


def test_tests_lie_in_the_rooms_they_test():
    "What concerns the whole project lies beside the rooms; a room whose own pages hold all its lessons has no folder."
    folders = {p.parent.name for p in (ROOT / 'tests').glob('*/test_*.py')}
    assert folders <= {*ROOMS, 'experiments'}
    of_all = 'front', 'lab', 'links', 'package', 'project', 'sync'
    assert {p.stem for p in (ROOT / 'tests').glob('test_*.py')} == {f'test_{name}' for name in of_all}
