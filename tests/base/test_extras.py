"What the package does where a library, an extra or a part of the operating system is absent; each case in a process of its own."

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from molrec.base.extras import extras

ROOT = Path(__file__).resolve().parents[2]
hidden = 'import sys\nfor name in {names!r}: sys.modules[name] = None\n'


def without(
    names: str,  # of libraries, separated by spaces
    code: str,
    cwd: Path = ROOT,
    **env: str,
) -> subprocess.CompletedProcess:
    "Run code in a Python that does not have these libraries."
    return subprocess.run(
        [sys.executable, '-c', hidden.format(names=names.split()) + code],
        cwd=cwd,
        env=os.environ | dict(PYTHONPATH=str(ROOT)) | env,
        capture_output=True,
        text=True,
        timeout=120,
    )


def command(names: str, *words: str, cwd: Path) -> subprocess.CompletedProcess:
    "A command in a Python that does not have these libraries."
    return without(names, f'from molrec.cli.main import main; sys.exit(main({list(words)!r}))', cwd)


def test_the_table_of_extras_names_what_pyproject_brings():
    "By their distributions, since those are what is installed; what is imported may have another name."
    told = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['optional-dependencies']
    other = dict(faiss='faiss-cpu')
    for extra, names in extras.items():
        brought = {line.split('>')[0].split('<')[0].lower() for line in told[extra]}
        assert {other.get(n, n).replace('_', '-') for n in names.split()} == {b for b in brought if 'molrec' not in b}


LIBRARIES = sorted({name for names in extras.values() for name in names.split()})
everything = ' '.join(LIBRARIES)


def test_what_needs_no_extra_is_imported_without_any():
    rooms = 'settings data metrics records kernels embeddings encoders similarities training tasks search cli'
    code = (
        'import importlib, pkgutil\n'
        f'for room in {rooms.split()!r}:\n'
        '    folder = importlib.import_module(f"molrec.{room}")\n'
        '    for page in pkgutil.iter_modules(folder.__path__):\n'
        '        importlib.import_module(f"molrec.{room}.{page.name}")\n'
    )
    said = without(everything, code)
    assert said.returncode == 0, said.stderr


@pytest.mark.parametrize(
    'words, names, extra',
    [
        (['report'], 'jinja2', 'report'),
        (['report'], 'matplotlib', 'report'),
        (['retrieval'], 'matplotlib', 'report'),
        (['bench', 'stage1', '--quick'], 'faiss', 'bench'),
        (['bench', 'one-query', '--quick'], 'fastcore', 'bench'),
        (['bench', 'training', '--quick'], 'matplotlib', 'report'),
    ],
)
def test_a_command_names_the_extra_that_it_needs(words, names, extra, tmp_path):
    folder = ROOT if words == ['retrieval'] else tmp_path
    said = command(names, *words, cwd=folder)
    named = re.search(r"pip install 'molrec\[([\w,]+)\]'", said.stderr)  # others too, where they are not here either
    assert said.returncode == 1 and named and extra in named[1].split(','), said.stderr
    assert 'Traceback' not in said.stderr


def test_data_plan_and_doctor_need_no_extra(tmp_path):
    (tmp_path / 'plays.csv').write_text(
        'user_id,item_id,timestamp\n' + ''.join(f'{u},{i},{u + i}\n' for u in range(9) for i in range(9))
    )
    for words in (['data', 'check', 'plays.csv'], ['plan', '--items', '1000'], ['--help']):
        said = without(everything, f'from molrec.cli.main import main; sys.exit(main({words!r}))', tmp_path)
        assert said.returncode == 0 or words == ['--help'], said.stderr
    said = without(everything, "from molrec.cli.main import main; sys.exit(main(['doctor']))", tmp_path)
    assert 'Traceback' not in said.stderr and said.returncode == 0, said.stdout


def test_kernels_run_in_torch_without_triton():
    code = (
        'import torch\n'
        'from molrec.kernels.rowwise import rowwise_quantize\n'
        'from molrec.kernels.scan import sample_threshold\n'
        'from molrec.kernels.language import tl\n'
        'import molrec.kernels.hstu_attention, molrec.kernels.mol_loss, molrec.kernels.mol_score\n'
        "codes, scales = rowwise_quantize(torch.randn(4, 8), 'int8')\n"
        'assert type(tl).__name__ == "Absent" and codes.shape == (4, 8)\n'
        'try: sample_threshold(torch.randn(2, 50), 3, "triton")\n'
        'except ValueError as e: print(e)\n'
    )
    said = without('triton triton.language', code)
    assert said.returncode == 0, said.stderr
    assert "pip install 'molrec[triton]'" in said.stdout


def test_files_and_memory_do_without_what_windows_lacks(tmp_path):
    code = (
        'from molrec.base.environment import peak_memory_mib\n'
        'from molrec.base.files import write_json\n'
        'write_json("a.json", dict(mib=peak_memory_mib()))\n'
    )
    said = without('fcntl resource', code, tmp_path)
    assert said.returncode == 0, said.stderr
    assert [p.name for p in tmp_path.iterdir()] == ['a.json']
