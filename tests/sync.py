"Is what is made from the notebooks what they make now? `python tests/sync.py export|clean|readme` prints what is not, and exits 1 if anything is."

import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


@contextmanager
def notebooks_copy(
    root: Path,  # a checkout
):  # yields a temporary folder with its settings.ini and its notebooks
    "A place where nbdev can write without touching the checkout."
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        shutil.copy(root / 'settings.ini', folder)
        shutil.copytree(
            root / 'nbs',
            folder / 'nbs',
            ignore=lambda d, names: {
                n for n in names if n.startswith('.') or not (n.endswith('.ipynb') or Path(d, n).is_dir())
            },
        )
        yield folder


def command(*args, cwd: Path) -> None:
    "Run one of the environment's commands; what it says is shown only if it fails."
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}  # under it nbdev_export does nothing
    done = subprocess.run([str(BIN / args[0]), *map(str, args[1:])], cwd=cwd, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f'{args[0]} failed:\n{done.stdout}{done.stderr}')


def contents(folder: Path, pattern: str) -> dict[str, bytes]:
    "Files under `folder` by their path in it."
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob(pattern))
        if '.ipynb_checkpoints' not in p.parts
    }


def first_difference(old: bytes, new: bytes) -> str:
    "The first line in which two texts differ."
    old, new = old.decode().splitlines() + [''], new.decode().splitlines() + ['']
    n = next((i for i, (a, b) in enumerate(zip(old, new)) if a != b), min(len(old), len(new)) - 1)
    return f'line {n + 1} is {old[n].strip()!r}, not {new[n].strip()!r}'


def check_export(root: Path = ROOT) -> list[str]:
    "Modules that differ, byte for byte, from what a fresh export of the notebooks writes."
    with notebooks_copy(root) as folder:
        command('nbdev_export', cwd=folder)
        made, kept = contents(folder / 'molrec', '*.py'), contents(root / 'molrec', '*.py')
    return (
        [f'molrec/{name} has no notebook' for name in kept.keys() - made.keys()]
        + [f'molrec/{name} is missing: its notebook was not exported' for name in made.keys() - kept.keys()]
        + [
            f'molrec/{name} differs from its notebook: {first_difference(kept[name], made[name])}'
            for name in sorted(made.keys() & kept.keys())
            if made[name] != kept[name]
        ]
    )


def check_clean(root: Path = ROOT) -> list[str]:
    "Notebooks that `nbdev_clean` would change."
    with notebooks_copy(root) as folder:
        before = contents(folder / 'nbs', '*.ipynb')
        command('nbdev_clean', cwd=folder)
        after = contents(folder / 'nbs', '*.ipynb')
    return [
        f'nbs/{name} is not clean: {first_difference(before[name], after[name])}'
        for name in before
        if before[name] != after[name]
    ]


def readme(root: Path = ROOT) -> str:
    "README.md as nbs/index.ipynb gives it."
    with tempfile.TemporaryDirectory() as folder:
        command(
            'jupyter',
            'nbconvert',
            '--log-level',
            'ERROR',
            '--config',
            root / 'nbs' / 'readme_config.py',
            '--to',
            'markdown',
            '--output-dir',
            folder,
            '--output',
            'README',
            root / 'nbs' / 'index.ipynb',
            cwd=root,
        )
        return (Path(folder) / 'README.md').read_text(encoding='utf-8')


@contextmanager
def inside(folder: Path):
    "The current folder is another one."
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def value_of(source: str, names: dict) -> str:
    "Run a cell; the text that its last line shows."
    *lines, last = ast.parse(source).body
    exec(compile(ast.Module(lines, []), 'index.ipynb', 'exec'), names)
    return eval(compile(ast.Expression(last.value), 'index.ipynb', 'eval'), names).data


def computed(notebook: Path) -> dict[str, tuple[str, str]]:  # cell id: what is stored, what is given now
    "Cells without visible code, which show what the reports say."
    names, found = {}, {}
    with inside(notebook.parent):
        for cell in json.loads(notebook.read_text(encoding='utf-8'))['cells']:
            source = ''.join(cell['source'])
            if source.startswith('#| hide'):
                exec(source, names)
            if source.startswith('#| echo: false'):
                stored = ''.join(''.join(o.get('data', {}).get('text/markdown', '')) for o in cell['outputs'])
                found[cell['id']] = stored, value_of(source, names)
    return found


def check_readme(root: Path = ROOT) -> list[str]:
    "README.md behind its notebook, or the notebook behind the files of the report."
    said = []
    if (root / 'README.md').read_text(encoding='utf-8') != readme(root):
        said.append('README.md is not what nbs/index.ipynb gives: run make readme')
    cells = computed(root / 'nbs' / 'index.ipynb') if (root / 'reports').exists() else {}
    return said + [
        f'nbs/index.ipynb, cell {name} shows other figures than reports/ has: run make readme'
        for name, (stored, now) in cells.items()
        if stored != now
    ]


if __name__ == '__main__':
    checks = dict(export=check_export, clean=check_clean, readme=check_readme)
    if len(sys.argv) != 2 or sys.argv[1] not in checks:
        raise SystemExit(f'usage: python tests/sync.py {"|".join(checks)}')
    said = checks[sys.argv[1]]()
    print('\n'.join(said), end='\n' if said else '')
    sys.exit(bool(said))
