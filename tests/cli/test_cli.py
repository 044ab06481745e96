"The command line: how soon it answers, what it imports, which status it ends with, and that every word of it leads somewhere."

import ast
import inspect
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from molrec.cli import bench
from molrec.cli.main import commands, main, parsed

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ('torch', 'pandas', 'numpy', 'pyarrow', 'matplotlib', 'papermill')


def python(*words, **more):
    "A Python of its own."
    env = os.environ | dict(PYTHONPATH=str(ROOT))
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, **more
    )


def fastest(*words):
    "Seconds of processor time of the best of three: those of the clock say how busy the machine is."

    def spent():
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    took = []
    for _ in range(3):
        began = spent()
        assert python(*words).returncode == 0
        took.append(spent() - began)
    return min(took)


def loaded(code):
    "Which of the heavy packages are there after this."
    end = f'import sys; print([m for m in {HEAVY} if m in sys.modules])'
    return ast.literal_eval(python('-c', f'{code}\n{end}').stdout.splitlines()[-1])


def test_help_comes_at_once():
    assert fastest('-m', 'molrec', '--help') < 0.3
    assert fastest('-m', 'molrec', '--version') < 0.3


def test_the_package_is_imported_at_once():
    assert fastest('-c', 'import molrec') < 0.2


@pytest.mark.parametrize(
    'code',
    [
        'import molrec',
        'import molrec.cli.main',
        'from molrec.cli.main import main\ntry: main(["--help"])\nexcept SystemExit: pass',
    ],
)
def test_neither_needs_a_heavy_package(code):
    assert loaded(code) == []


@pytest.mark.parametrize('command', commands)
def test_help_of_a_command_needs_neither_torch_nor_pandas(command):
    "And imports the page of that command alone: each is found by its name."
    code = f'from molrec.cli.main import main\ntry: main([{command!r}, "--help"])\nexcept SystemExit: pass'
    assert not {'torch', 'pandas'} & set(loaded(code))


def test_only_the_page_that_is_asked_for_is_imported():
    code = 'from molrec.cli.main import parsed\nparsed(["plan", "--items", "7"])'
    end = 'import sys; print(sorted(m[11:] for m in sys.modules if m.startswith("molrec.cli.")))'
    assert python('-c', f'{code}\n{end}').stdout.strip() == "['main', 'plan']"


def test_done_is_0(capsys):
    assert main(['plan', '--items', '1000']) == 0 and 'in all' in capsys.readouterr().out


@pytest.mark.parametrize(
    'words, said',
    [
        (['plan', '--items', '0'], 'items: got 0'),
        (['plan', '--items', '5', '--mol', '8x4'], "mol: got '8x4'"),
        (['runs', 'tell'], 'runs: got tell'),
        (['data', 'ml-1m', 'ml-20m'], 'data: got ml-1m ml-20m'),
        (['run', 'no-such-row.yaml'], 'no-such-row.yaml'),
        (['search', 'ml-1m'], 'wanted --user ID'),
        (['bench', 'kernels', '--quick'], 'no quick form'),
    ],
)
def test_said_why_is_1(words, said, capsys):
    "In one line."
    assert main(words) == 1
    err = capsys.readouterr().err
    assert err.startswith('molrec: ') and said in err and err.count('\n') == 1


@pytest.mark.parametrize(
    'words',
    [
        [],
        ['serch'],
        ['plan'],
        ['plan', '--items', 'many'],
        ['run'],
        ['bench', 'everything'],
        ['report', '--scale', 'big'],
    ],
)
def test_typed_wrongly_is_2(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2 and capsys.readouterr().err.startswith('usage: molrec')


def test_the_status_reaches_the_shell():
    assert python('-m', 'molrec', 'plan', '--items', '0').returncode == 1
    assert python('-m', 'molrec', 'plan').returncode == 2


def test_a_change_may_be_typed_with_an_equals_sign():
    asked = parsed(['run', 'a.yaml', '-p', 'row=a=b', '-p', 'lr', '1e-3'])
    assert asked.parameter == [['row', 'a=b'], ['lr', '1e-3']]


@pytest.mark.parametrize('what', bench.measured_by)
def test_every_measurement_has_its_function(what):
    "It is there, and takes what the command gives it."
    given = inspect.signature(bench.measuring(what)).parameters
    assert ('quick' in given) == bench.measured_by[what].quick


def test_a_measurement_gets_its_folder(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(bench, 'measuring', lambda what: lambda out, **more: asked.append((what, out, more)))
    assert main(['bench', 'search', '--quick', '--out', str(tmp_path)]) == 0
    assert main(['bench', 'kernels']) == 0
    assert asked[0] == ('search', tmp_path, dict(quick=True))
    assert asked[1] == ('kernels', ROOT / 'reports' / 'kernels', {})
