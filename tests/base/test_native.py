"Compiled libraries: whose they are, whether they are whole, and what becomes of a compiler that does not do its work."

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from molrec.base import native

ROOT = Path(__file__).resolve().parents[2]
ADD = 'int add(int a) { return a + 1; }'
needs_compiler = pytest.mark.skipif(not native.compiler(), reason='there is no C compiler on this machine')
needs_root = pytest.mark.skipif(os.getuid() != 0, reason='only root can give a file to another user')
somebody = 65534


def forget():
    "As a new process: nothing built, asked or said."
    for state in (native.stuck, native.told, native.problems):
        state.clear()
    native.build.cache_clear()
    native.compiler_version.cache_clear()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    "An empty cache folder, and a process that has built nothing."
    monkeypatch.setenv('MOLREC_CACHE', str(tmp_path / 'cache'))
    forget()
    yield tmp_path / 'cache' / 'native'
    forget()


@pytest.fixture
def compiler_that(tmp_path, monkeypatch):
    "Makes a shell script the compiler."

    def make(script):
        (tmp_path / 'cc').write_text(script)
        (tmp_path / 'cc').chmod(0o755)
        monkeypatch.setenv('CC', str(tmp_path / 'cc'))
        forget()

    return make


def evil(folder: Path) -> tuple[bytes, Path]:
    "A library that leaves a mark when it is loaded, and the mark."
    mark = folder / 'was-here'
    source = f'#include <stdio.h>\n__attribute__((constructor)) void on_load(void) {{ fclose(fopen("{mark}", "w")); }}\n{ADD}'
    subprocess.run(
        [native.compiler(), '-shared', '-fPIC', '-x', 'c', '-', '-o', folder / 'evil.so'],
        input=source.encode(),
        check=True,
    )
    return (folder / 'evil.so').read_bytes(), mark


def name_of_add() -> str:
    return native.library_name('add', ADD, {})


def lines(capfd) -> list[str]:
    return [l for l in capfd.readouterr().err.splitlines() if l.startswith('molrec: ')]


# -- whose library it is --


@needs_compiler
def test_a_library_is_compiled_once_and_found_again(cache, monkeypatch):
    assert native.build('add', ADD).add(1) == 2
    assert sorted(os.listdir(cache)) == [name_of_add(), f'{name_of_add()}.sha256']
    assert [oct(p.stat().st_mode & 0o777) for p in (cache, *sorted(cache.iterdir()))] == ['0o700', '0o600', '0o600']
    forget()
    monkeypatch.setattr(native, 'compile_c', None)
    assert native.build('add', ADD).add(1) == 2


@needs_compiler
@pytest.mark.parametrize('note', ['none', 'of the true library', 'of another name', 'its own, by somebody else'])
def test_what_was_planted_under_the_name_is_not_run(cache, tmp_path, note):
    if 'somebody' in note and os.getuid():
        pytest.skip('only root can give a file to another user')
    planted, mark = evil(tmp_path)
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    library, beside = cache / name_of_add(), cache / f'{name_of_add()}.sha256'
    library.write_bytes(planted)
    if note == 'of the true library':
        beside.write_bytes(native.note(library.name, native.compile_c(ADD, {})))
    if note == 'of another name':
        beside.write_bytes(native.note('other.so', planted))
    if 'somebody' in note:
        beside.write_bytes(native.note(library.name, planted))
        for p in (library, beside):
            os.chown(p, somebody, somebody)
    assert native.build('add', ADD).add(1) == 2 and not mark.exists()
    assert library.read_bytes() != planted and cache.stat().st_mode & 0o777 == 0o700
    assert native.kept(library.name) == library.read_bytes()  # mended: the next process finds it


@needs_compiler
def test_a_file_that_others_may_write_to_is_not_read(cache):
    native.build('add', ADD)
    (cache / name_of_add()).chmod(0o666)
    assert native.kept(name_of_add()) is None


@needs_compiler
@pytest.mark.parametrize('kind', ['link', 'of somebody else'])
def test_a_folder_that_is_not_ours_is_not_used(cache, tmp_path, capfd, kind):
    if 'somebody' in kind and os.getuid():
        pytest.skip('only root can give a folder to another user')
    planted, mark = evil(tmp_path)
    theirs = tmp_path / 'theirs' if kind == 'link' else cache
    theirs.mkdir(parents=True)
    (theirs / name_of_add()).write_bytes(planted)
    (theirs / f'{name_of_add()}.sha256').write_bytes(native.note(name_of_add(), planted))
    if kind == 'link':
        cache.parent.mkdir()
        cache.symlink_to(theirs)
    else:
        os.chown(theirs, somebody, somebody)
    assert native.build('add', ADD).add(1) == 2 and not mark.exists()
    assert native.build('add', ADD, W=2).add(1) == 2 and len(os.listdir(theirs)) == 2
    (said,) = lines(capfd)
    assert ('is a link' if kind == 'link' else f'belongs to user {somebody}') in said


@needs_compiler
def test_what_was_checked_is_what_is_loaded(cache, tmp_path, monkeypatch):
    native.build('add', ADD)
    forget()
    planted, mark = evil(tmp_path)
    load = native.load_library

    def exchanged_meanwhile(content):
        (cache / name_of_add()).write_bytes(planted)
        return load(content)

    monkeypatch.setattr(native, 'load_library', exchanged_meanwhile)
    assert native.build('add', ADD).add(1) == 2 and not mark.exists()


BUILD = f'import sys; from molrec.base.native import build, problems; l = build("add", {ADD!r}); print(l.add(1) if l else problems["add"])'


def start(code=BUILD, **env):
    return subprocess.Popen(
        [sys.executable, '-c', code],
        cwd=ROOT,
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@needs_compiler
def test_a_library_that_was_cut_short_is_compiled_anew(cache):
    "In a process of its own: mapping half a library ends it."
    native.build('add', ADD)
    whole = (cache / name_of_add()).read_bytes()
    (cache / name_of_add()).write_bytes(whole[:5000])
    process = start()
    assert process.communicate(timeout=60)[0] == '2\n' and process.returncode == 0
    assert (cache / name_of_add()).read_bytes() == whole


@needs_compiler
def test_two_processes_that_compile_at_once_both_have_it(cache):
    both = [start() for _ in range(2)]
    assert [p.communicate(timeout=60) for p in both] == [('2\n', '')] * 2
    assert len(os.listdir(cache)) == 2 and native.kept(name_of_add())


@needs_compiler
@needs_root
def test_without_a_home_a_library_is_compiled_for_the_process(tmp_path):
    code = f'import os; from molrec.base import native; os.setuid({somebody - 7}); os.environ.pop("HOME", 0); os.environ.pop("MOLREC_CACHE", 0)\n{BUILD}'
    out, err = start(code, TMPDIR='/tmp').communicate(timeout=60)
    assert out == '2\n' and err.count('\n') == 1
    assert err.startswith('molrec: every process compiles its loops anew') and 'MOLREC_CACHE' in err


@needs_compiler
def test_a_cache_that_cannot_be_written_is_said_once(tmp_path, monkeypatch, capfd):
    (tmp_path / 'cache').touch()
    monkeypatch.setenv('MOLREC_CACHE', str(tmp_path / 'cache'))
    forget()
    assert [native.build('add', ADD, W=w).add(1) for w in (1, 2)] == [2, 2] and native.problems == {}
    (said,) = lines(capfd)
    assert 'a part of it is a file where a folder should be' in said
    assert os.listdir(tmp_path) == ['cache']
    forget()


# -- a compiler that does not do its work --


def test_the_bounds():
    assert (native.version_s, native.compile_s) == (10, 120)


ANSWERS = '#!/bin/sh\n[ "$1" = --version ] && { echo cc 1.0; exit; }\n'


@pytest.mark.parametrize(
    'script, part',
    [
        ('#!/bin/sh\necho error: no licence >&2; exit 1\n', 'no licence'),
        ('#!/bin/sh\nexit 7\n', 'status 7'),
        ('#!/bin/sh\nprintf "\\377\\376\\033[31m\\007"; exit 1\n', '?'),
        ('not a program\n', 'format error'),
        ('#!/no/such/interpreter\n', 'No such file'),
        (ANSWERS + 'while :; do echo error; done\n', 'prints without end'),
        (ANSWERS + 'exit 0\n', 'wrote no library'),
        (ANSWERS + 'for last; do :; done; echo garbage > "$last"\n', 'does not load'),
        (ANSWERS + 'kill -SEGV $$\n', 'status -11'),
    ],
)
def test_a_compiler_that_fails_leaves_torch_and_one_line(cache, compiler_that, capfd, script, part):
    compiler_that(script)
    began = time.monotonic()
    assert [native.build('add', ADD, W=w) for w in (1, 2)] == [None, None] and time.monotonic() - began < 10
    assert part in native.problems['add'] and native.problems['add'].isprintable()
    (said,) = lines(capfd)
    assert said.startswith('molrec: add runs in torch, slower: ') and part in said
    assert not cache.exists() or os.listdir(cache) == []


def test_no_compiler_leaves_torch_and_one_line(cache, monkeypatch, capfd):
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    assert [native.build('add', ADD, W=w) for w in (1, 2)] == [None, None]
    assert ['no C compiler' in line for line in lines(capfd)] == [True]


def alive(pid: int) -> bool:
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError:
        return False


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='looks for processes in /proc')
@pytest.mark.parametrize('script', ['#!/bin/sh\n', ANSWERS], ids=['version', 'compile'])
def test_a_compiler_that_hangs_costs_its_time_once_and_leaves_no_child(
    cache, compiler_that, tmp_path, monkeypatch, capfd, script
):
    compiler_that(script + f'sleep 600 & echo $! > {tmp_path}/child; wait\n')
    monkeypatch.setattr(native, 'version_s', 1)
    monkeypatch.setattr(native, 'compile_s', 1)
    before, began = sorted(os.listdir('/tmp')), time.monotonic()
    assert [native.build('add', ADD, W=w) for w in range(5)] == [None] * 5 and 1 <= time.monotonic() - began < 4
    assert 'did not end within 1 s' in native.problems['add'] and len(lines(capfd)) == 1
    child, until = int((tmp_path / 'child').read_text()), time.monotonic() + 5
    while alive(child) and time.monotonic() < until:
        time.sleep(0.02)
    assert not alive(child)
    assert [n for n in sorted(os.listdir('/tmp')) if n not in before and 'molrec-loop' in n] == []


def test_a_compiler_that_leaves_a_child_behind_keeps_nobody_waiting(cache, compiler_that, tmp_path):
    compiler_that(f'#!/bin/sh\nsleep 600 & echo $! > {tmp_path}/child; echo cc 1.0\n')
    began = time.monotonic()
    assert native.compiler_version(native.compiler()) == 'cc 1.0\n' and time.monotonic() - began < 5
    os.kill(int((tmp_path / 'child').read_text()), signal.SIGKILL)


def test_doctor_says_what_runs_and_what_cannot_be_written_in_bounded_time(tmp_path, compiler_that):
    compiler_that('#!/bin/sh\nsleep 600\n')
    (tmp_path / 'nbs' / 'experiments').mkdir(parents=True)
    for name in ('settings.ini', 'requirements.txt'):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / 'reports').touch()
    began = time.monotonic()
    said = subprocess.run(
        [sys.executable, '-m', 'molrec', 'doctor'],
        cwd=tmp_path,
        timeout=100,
        env=os.environ | dict(PYTHONPATH=str(ROOT), MOLREC_CACHE=f'{tmp_path}/reports/cache'),
        capture_output=True,
        text=True,
    )
    assert time.monotonic() - began < 60 and said.returncode == 1
    assert 'in torch: scan, softmax, hstu' in said.stdout and 'cc did not end within 10 s' in said.stdout
    for part in (
        'missing  folder: reports',
        'missing  folder: records',
        'note     cache',
        'note     compiled libraries',
    ):
        assert part in said.stdout
    assert said.stdout.count('a part of it is a file where a folder should be') == 4 and 'Traceback' not in said.stderr
