"Files written whole or not at all: what a killed writer leaves, who sweeps it, and what a user reads when a file cannot be written."

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from molrec.base.files import WriteError, atomic_path, neighbour, unwritable, write_json

ROOT = Path(__file__).resolve().parents[2]
needs_root = pytest.mark.skipif(os.getuid() != 0, reason='only root can become another user, or mount a small disk')


def start(code, *words, **more):
    return subprocess.Popen(
        [sys.executable, '-c', code, *map(str, words)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def hidden(folder):
    return sorted(p.name for p in Path(folder).iterdir() if p.name.startswith('.'))


WRITES = """
import sys
from molrec.base.files import atomic_path
with atomic_path(sys.argv[1]) as aside:
    aside.write_text('hal')
    aside.with_name('.tmpA1b2C3').write_text('of a library that renames by itself')
    print('writing', flush=True)
    sys.stdin.readline()
    aside.write_text('whole')
"""


@pytest.fixture
def writer(tmp_path):
    "A process in the middle of writing `slow`, with another file beside it."
    (tmp_path / 'slow').write_text('old')
    process = start(WRITES, tmp_path / 'slow')
    assert process.stdout.readline() == 'writing\n'
    yield process
    process.kill()
    process.communicate(timeout=10)


# -- who sweeps what --


def test_what_a_killed_writer_left_is_swept_by_the_next(tmp_path, writer):
    writer.send_signal(signal.SIGKILL)
    assert writer.wait(10) == -signal.SIGKILL and (tmp_path / 'slow').read_text() == 'old'
    assert len(hidden(tmp_path)) == 2
    write_json(tmp_path / 'another.json', {})
    assert sorted(os.listdir(tmp_path)) == ['another.json', 'slow']


def test_a_living_writer_is_left_alone_however_old_its_files_are(tmp_path, writer):
    before = hidden(tmp_path)
    for name in before:
        os.utime(tmp_path / name, (0, 0))
    for _ in range(3):
        write_json(tmp_path / 'another.json', {})
    assert hidden(tmp_path) == before
    said, err = writer.communicate('\n', timeout=10)
    assert (
        writer.returncode == 0 and err == '' and (tmp_path / 'slow').read_text() == 'whole' and hidden(tmp_path) == []
    )


def test_a_stopped_writer_lives(tmp_path, writer):
    writer.send_signal(signal.SIGSTOP)
    write_json(tmp_path / 'slow', {})  # the very file that it is writing
    assert len(hidden(tmp_path)) == 2
    writer.send_signal(signal.SIGCONT)
    writer.communicate('\n', timeout=10)
    assert (tmp_path / 'slow').read_text() == 'whole' and hidden(tmp_path) == []


def test_a_thread_of_this_process_lives(tmp_path):
    with atomic_path(tmp_path / 'one') as one:
        one.write_text('1')
        other = threading.Thread(target=write_json, args=(tmp_path / 'two', 2))
        other.start()
        other.join(timeout=60)
        assert not other.is_alive()
    assert sorted(os.listdir(tmp_path)) == ['one', 'two']


def test_a_killed_save_of_weights_leaves_nothing_for_ever(tmp_path):
    "safetensors writes a third file and renames it; that one is swept too."
    code = (
        'import os, sys, torch, threading, signal, time\nfrom molrec.base.files import atomic_path\nfrom safetensors.torch import save_file\n'
        "def kill():\n    while not any('.tmp' in n for _, _, names in os.walk(os.path.dirname(sys.argv[1])) for n in names): pass\n"
        '    os.kill(os.getpid(), signal.SIGKILL)\n'
        'threading.Thread(target=kill, daemon=True).start()\n'
        'while True:\n    with atomic_path(sys.argv[1]) as aside: save_file(dict(a=torch.zeros(3_000_000)), aside)'
    )
    process = start(code, tmp_path / 'model.safetensors')
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL and hidden(tmp_path)
    write_json(tmp_path / 'record.json', {})
    assert hidden(tmp_path) == []


def test_files_of_the_user_are_not_touched(tmp_path):
    mine = [
        '.1a2b3c4d-record.json',
        '.molrec-notes',
        '.molrec-1a2b3c4d-record.json',
        '.molrec-lock',
        '.molrec-lock-short-x',
        '.lock',
        'record.json.lock',
        '.123-run.ipynb',
        '.~lock.record.json#',
        '.molrec-lock-1A2B3C4D-record.json',
    ]
    for name in mine:
        (tmp_path / name).write_text(name)
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'elsewhere' / 'precious').touch()
    (tmp_path / '.molrec-00000000-x').symlink_to(
        tmp_path / 'elsewhere'
    )  # even under a name of ours: a link is not followed
    (tmp_path / '.molrec-lock-00000000-x').touch()
    (tmp_path / '.molrec-lock-11111111-x').symlink_to(tmp_path / 'elsewhere' / 'precious')
    os.mkfifo(tmp_path / '.molrec-lock-22222222-x')
    write_json(tmp_path / 'record.json', {})
    assert (
        all((tmp_path / name).read_text() == name for name in mine) and (tmp_path / 'elsewhere' / 'precious').exists()
    )


@needs_root
def test_what_another_user_left_is_theirs(tmp_path):
    (tmp_path / '.molrec-1a2b3c4d-x').mkdir()
    (tmp_path / '.molrec-lock-1a2b3c4d-x').touch()
    os.chown(tmp_path / '.molrec-lock-1a2b3c4d-x', 65534, 65534)
    write_json(tmp_path / 'record.json', {})
    assert len(hidden(tmp_path)) == 2


MANY = """
import sys, threading
from molrec.base.files import atomic_path
def write(i):
    for n in range(25):
        with atomic_path(sys.argv[1]) as aside: aside.write_text(f'{i}' * 20_000)
threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
for t in threads: t.start()
for t in threads: t.join()
"""


def test_eight_threads_of_two_processes_write_one_file(tmp_path):
    both, seen, until = [start(MANY, tmp_path / 'file') for _ in range(2)], set(), time.monotonic() + 50
    while any(p.poll() is None for p in both) and time.monotonic() < until:
        if (tmp_path / 'file').exists():
            text = (tmp_path / 'file').read_text()
            seen.add((len(text), len(set(text))))
    assert [p.communicate(timeout=10) + (p.returncode,) for p in both] == [('', '', 0)] * 2
    assert seen == {(20_000, 1)} and os.listdir(tmp_path) == ['file']


def notebook(folder, code):
    nb = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell('k = 1', metadata=dict(tags=['parameters'])), nbformat.v4.new_code_cell(code)]
    )
    nbformat.write(nb, folder / 'it.ipynb')
    return folder / 'it.ipynb'


def test_the_notebook_of_a_killed_run_is_swept_by_the_next(tmp_path):
    runs, until = tmp_path / 'runs', time.monotonic() + 60
    code = f'import os, pathlib, time; pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(os.getpid())); time.sleep(100*k)'
    execute = 'import sys; from pathlib import Path; from molrec.cli.execute import execute; execute(Path(sys.argv[1]), Path(sys.argv[2]), dict(k=int(sys.argv[3])))'
    first = start(execute, notebook(tmp_path, code), runs / 'run.ipynb', 1)
    while not (tmp_path / 'pid').exists() and time.monotonic() < until:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=10)
    os.kill(int((tmp_path / 'pid').read_text()), signal.SIGKILL)  # the kernel would end by itself, later
    assert hidden(runs)
    second = start(execute, tmp_path / 'it.ipynb', runs / 'run.ipynb', 0)
    assert second.communicate(timeout=60)[1] == '' and os.listdir(runs) == ['run.ipynb']


# -- what a user reads --


def one_sentence(e, path, part):
    assert (
        isinstance(e, OSError)
        and str(e).startswith(f'{path}: cannot be written')
        and part in str(e)
        and '\n' not in str(e)
    )
    assert 'Errno' not in str(e) and isinstance(e.errno, int | None)


@pytest.mark.parametrize(
    'kind, part',
    [
        ('through a file', 'a part of it is a file'),
        ('a folder', 'it is a folder'),
        ('a pipe', 'it is a folder or a device'),
        ('/proc', 'name a folder that you can write to'),
        ('too long', 'name another path'),
    ],
)
def test_a_path_that_cannot_be_is_refused_before_the_work(tmp_path, kind, part):
    if kind == '/proc' and not Path('/proc/self').exists():
        pytest.skip('there is no /proc here')
    (tmp_path / 'file').write_text('kept')
    (tmp_path / 'folder').mkdir()
    os.mkfifo(tmp_path / 'pipe')
    path = {
        'through a file': tmp_path / 'file' / 'deep' / 'record.json',
        'a folder': tmp_path / 'folder',
        'a pipe': tmp_path / 'pipe',
        '/proc': Path('/proc/no-such/record.json'),
        'too long': tmp_path / ('x' * 300),
    }[kind]
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(WriteError) as said, atomic_path(path):
        pytest.fail('the work was begun')
    one_sentence(said.value, path, part)
    assert (
        sorted(os.listdir(tmp_path)) == before
        and (tmp_path / 'pipe').is_fifo()
        and (tmp_path / 'file').read_text() == 'kept'
    )


def test_a_long_name_that_the_disk_takes_is_taken(tmp_path):
    for name in ('x' * 255, 'é' * 127, '.hidden', 'a b\nc', 'x.lock', '-'):
        write_json(tmp_path / name, name)
        assert os.listdir(tmp_path) == [name]
        (tmp_path / name).unlink()


def test_a_folder_that_takes_its_place_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(WriteError, match='a folder has this name'), atomic_path(tmp_path / 'it') as aside:
        aside.touch()
        (tmp_path / 'it').mkdir()
    assert os.listdir(tmp_path) == ['it']


@pytest.mark.parametrize(
    'e',
    [
        FileNotFoundError(errno.ENOENT, 'No such file or directory', 'ratings.csv'),
        OSError('HTTP 404'),
        ConnectionResetError(errno.ECONNRESET, 'Connection reset by peer'),
        RuntimeError('(os error 28)'),
        KeyboardInterrupt(),
    ],
)
def test_what_is_not_of_the_disk_passes_unchanged(tmp_path, e):
    with pytest.raises(type(e)) as said, atomic_path(tmp_path / 'it') as aside:
        aside.write_text('hal')
        raise e
    assert said.value is e and os.listdir(tmp_path) == []


AS_SOMEBODY = """
import os, sys
from molrec.base.files import unwritable, write_json
os.chdir(sys.argv[1])
os.setgid(65534)
os.setuid(65534)
for path in ('mine/a.json', 'mine/deep/b.json'):
    try: write_json(path, {})
    except OSError as e: print(e)
    print(unwritable(os.path.dirname(path)))
"""


@needs_root
def test_a_folder_of_somebody_else_is_one_sentence(tmp_path):
    (tmp_path / 'mine').mkdir(mode=0o755)
    out, err = start(AS_SOMEBODY, tmp_path).communicate(timeout=60)
    lines = out.splitlines()
    assert err == '' and len(lines) == 4 and os.listdir(tmp_path / 'mine') == []
    assert all(' cannot be written (Permission denied): name a folder that you can write to' in line for line in lines)
    assert lines[0].startswith('mine/a.json: ')


def full_writers():
    table, x = pd.DataFrame(dict(x=np.random.default_rng(0).random(60_000))), torch.zeros(120_000)

    def figure(p):
        from matplotlib.figure import Figure

        Figure((9, 9)).savefig(p, format='svg', metadata=dict(Title='x' * 400_000))

    return dict(
        json=lambda p: p.write_text('x' * 400_000),
        parquet=lambda p: table.to_parquet(p),
        csv=lambda p: table.to_csv(p),
        safetensors=lambda p: save_file(dict(x=x), p),
        svg=figure,
    )


@pytest.fixture(scope='module')
def small_disk(tmp_path_factory):
    folder = tmp_path_factory.mktemp('disk')
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', folder], capture_output=True).returncode:
        pytest.skip('a small disk cannot be mounted here')
    yield folder
    subprocess.run(['umount', '-l', folder], check=True)


@needs_root
@pytest.mark.parametrize('kind', full_writers())
def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(small_disk, kind):
    path = small_disk / 'it'
    path.write_text('old')
    with pytest.raises(WriteError) as said, atomic_path(path) as aside:
        full_writers()[kind](aside)
    one_sentence(said.value, path, '(No space left on device): free some space')
    assert said.value.errno == errno.ENOSPC and os.listdir(small_disk) == ['it'] and path.read_text() == 'old'


@needs_root
def test_a_disk_without_a_byte_left(small_disk):
    with pytest.raises(OSError), open(small_disk / 'it', 'wb') as f:
        while True:
            f.write(b'x' * 4096)
    assert 'free some space' in unwritable(small_disk)
    with pytest.raises(WriteError, match='No space left on device'):
        write_json(small_disk / 'deep' / 'other', {})
    (small_disk / 'it').unlink()
    assert unwritable(small_disk) == '' and not [n for n in os.listdir(small_disk) if n.startswith('.')]


LIMITED = """
import resource, sys
from molrec.base.files import atomic_path
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    with atomic_path(sys.argv[1]) as aside: aside.write_bytes(bytes(20_000))
except OSError as e: print(e)
"""


def test_a_file_larger_than_is_allowed_is_one_sentence(tmp_path):
    out, err = start(LIMITED, tmp_path / 'it').communicate(timeout=60)
    assert (
        err == ''
        and out.startswith(f'{tmp_path}/it: cannot be written (File too large)')
        and os.listdir(tmp_path) == []
    )


def test_unwritable_makes_nothing(tmp_path):
    assert unwritable(tmp_path / 'not' / 'yet') == '' and os.listdir(tmp_path) == []


def test_a_neighbour_is_for_its_user_alone(tmp_path):
    with neighbour(tmp_path / 'it') as aside:
        assert aside.name == 'it' and aside.parent.stat().st_mode & 0o777 == 0o700
        (lock,) = [p for p in tmp_path.iterdir() if re.fullmatch(r'\.molrec-lock-[0-9a-f]{8}-it', p.name)]
        assert lock.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == []
