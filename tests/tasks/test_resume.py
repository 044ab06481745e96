"A run that is killed with SIGKILL and resumed equals one that was not, bit for bit."

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

worker = """
import functools, json, sys, time
import torch
from molrec.settings.config import Config
from molrec.tasks import record
from molrec.tasks.runs import run
from molrec.training import loop
torch.set_num_threads(1)
settings, runs, slow = json.loads(sys.argv[1]), sys.argv[2], float(sys.argv[3])
step, steps = loop.take_step, 0
def counted(*args):
    global steps
    steps += 1
    time.sleep(slow)
    return step(*args)
loop.take_step = counted
if slow:
    record.fit = functools.partial(record.fit, save_every_s=0)
run(Config(**settings), runs, progress=False)
print(steps)
"""

small = dict(
    dim=16,
    max_length=12,
    ffn=16,
    batch_size=8,
    epochs=3,
    n_negatives=8,
    share=32,
    n_query=2,
    n_item=2,
    width=8,
    n_uid=1,
    query_hidden=16,
    gate_hidden=8,
    lr=1e-2,
    warmup_steps=5,
    patience=9,
)


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    rng, n = np.random.default_rng(0), 60
    walk = (rng.integers(40, size=(n, 1)) + rng.integers(1, 3, (n, 12)).cumsum(1)) % 40
    path = tmp_path_factory.mktemp('world') / 'ring.csv'
    pd.DataFrame(
        dict(user_id=np.repeat(np.arange(n), 12), item_id=walk.ravel(), timestamp=np.tile(np.arange(12), n))
    ).to_csv(path, index=False)
    return str(path)


def start(settings, runs, slow=0.0):
    return subprocess.Popen(
        [sys.executable, '-c', worker, json.dumps(settings), str(runs), str(slow)], stdout=subprocess.PIPE, text=True
    )


def steps_of(process):
    "Steps that a worker took, when it has ended well."
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return int(out)


def saved_step(state):
    "Steps done according to the file that a resumed run would read; 0 while there is none."
    from safetensors import safe_open

    if not state.exists():
        return 0, 0
    try:
        with safe_open(state, 'pt') as f:
            book = json.loads(f.metadata()['book'])
    except (OSError, RuntimeError):
        return 0, 0  # it was replaced by the next one between two looks at it
    return book['step'], book['batch']


def outcome(runs):
    "Weights, metrics and history of the one run in a folder."
    folder = next(p for p in runs.iterdir() if p.is_dir())
    record = json.loads((folder / 'record.json').read_text())
    return (
        load_file(folder / 'model.safetensors'),
        record['metrics'],
        [(e['loss'], e['valid_hr@10']) for e in record['history']],
        record['published_way'],
        record['public_rule'],
    )


@pytest.mark.parametrize(
    'settings',
    [
        dict(similarity='mol', schedule='joint', loss_share=0.7),
        dict(similarity='mol', schedule='alternate', loss='bce'),
        dict(similarity='dot'),
        dict(similarity='mol', schedule='joint', loss_share=0.7, head_width=8),
        dict(similarity='mol', schedule='alternate', head_width=8),
    ],
    ids=['mol-joint', 'mol-alternate', 'dot', 'head-joint', 'head-alternate'],
)
def test_sigkill_in_the_middle_of_an_epoch(world, tmp_path, settings):
    settings = small | settings | dict(dataset=world)
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    steps = steps_of(start(settings, whole))

    run = start(settings, killed, slow=0.05)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        states = list(killed.glob('*/state.safetensors'))
        step, batch = saved_step(states[0]) if states else (0, 0)
        if step >= 10 and batch >= 2:
            break  # past the first epoch, inside another
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    assert run.wait(30) == -signal.SIGKILL
    done = saved_step(states[0])[0]
    assert done >= 10 and not list(killed.glob('*/record.json'))

    assert steps_of(start(settings, killed)) == steps - done  # nothing is done twice
    (weights, *numbers), (weights_killed, *numbers_killed) = outcome(whole), outcome(killed)
    assert set(weights) == set(weights_killed)
    assert ('head.from_item.weight' in weights) == ('head_width' in settings)
    assert all(weights[k].tobytes() == weights_killed[k].tobytes() for k in weights)
    assert numbers == numbers_killed
    leftovers = [
        p.name
        for p in killed.glob('*/*')
        if p.name
        not in ('record.json', 'ranks.parquet', 'ranks-public.parquet', 'items.parquet', 'model.safetensors', '.lock')
    ]
    assert all(name.startswith('.') and 'state' in name for name in leftovers)  # at most what the kill interrupted


def test_two_at_once_make_one_run(world, tmp_path):
    settings = small | dict(dataset=world, epochs=1)
    both = [start(settings, tmp_path) for _ in range(2)]
    assert sorted(steps_of(p) for p in both)[0] == 0  # the second found the work done
    assert len(list(tmp_path.glob('*/record.json'))) == 1
