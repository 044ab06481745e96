"Who is told of a run: what arrives, what a resumption does, and that the run is the same with and without."

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from molrec.search.recommender import Recommender
from molrec.settings.config import config_hash
from molrec.settings.parts import names
from molrec.tasks.examples import ring, small
from molrec.tasks.runs import run
from molrec.training.tracking import MLflow, Tracker, read_trackers

KEPT = ('ranks.parquet', 'ranks-public.parquet', 'items.parquet', 'model.safetensors')
FAST = dict(epochs=3, warmup_steps=5)

worker = """
import functools, json, sys, time
from molrec.settings.config import Config
from molrec.tasks import record
from molrec.tasks.runs import run
from molrec.training import loop
step = loop.take_step
def slowly(*args):
    time.sleep(0.04)
    return step(*args)
loop.take_step = slowly
record.fit = functools.partial(record.fit, save_every_s=0)
run(Config(**json.loads(sys.argv[1])), sys.argv[2], progress=False, track='csv,tensorboard')
"""


def curve(folder, name):
    "Steps and values, as TensorBoard reads them."
    read = EventAccumulator(str(folder)).Reload()
    return [e.step for e in read.Scalars(name)], [e.value for e in read.Scalars(name)]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp('world') / 'ring.csv'
    ring().to_csv(path, index=False)
    return path


@pytest.fixture(scope='module')
def plain(data, tmp_path_factory):
    "A run that nobody was told of: its folder."
    runs = tmp_path_factory.mktemp('plain')
    return runs / run(small(dataset=str(data), **FAST), runs, progress=False)['id']


@pytest.fixture(scope='module')
def told(data, tmp_path_factory):
    "The same run, tracked: its folder and its record."
    runs = tmp_path_factory.mktemp('told')
    record = run(small(dataset=str(data), **FAST), runs, progress=False, track='csv,table,tensorboard')
    return runs / record['id'], record


def test_a_tracked_run_is_the_same_run_to_the_byte(plain, told):
    folder, record = told
    assert folder.name == plain.name and record['config_hash'] == config_hash(
        small(dataset='', **FAST, content=record['config']['content'])
    )
    assert [(folder / n).read_bytes() == (plain / n).read_bytes() for n in KEPT] == [True] * len(KEPT)
    other = json.loads((plain / 'record.json').read_text())
    assert record['metrics'] == other['metrics'] and record['files'] == other['files']
    assert [e['loss'] for e in record['history']] == [e['loss'] for e in other['history']]


def test_event_files_hold_what_the_record_holds(told):
    folder, record = told
    steps, values = curve(folder / 'tensorboard', 'loss/joint')
    assert steps == [1, 2, 3] and values == pytest.approx([e['loss'] for e in record['history']])
    assert curve(folder / 'tensorboard', 'valid_hr@10')[1] == pytest.approx(
        [e['valid_hr@10'] for e in record['history']]
    )
    tested = curve(folder / 'tensorboard', 'test/hr@10')
    assert tested == ([record['best_epoch']], pytest.approx([record['metrics']['test']['hr@10']]))
    assert pd.read_csv(folder / 'epochs.csv').loss.tolist() == [e['loss'] for e in record['history']]


def test_a_run_that_was_killed_is_one_curve_without_a_doubled_epoch(data, plain, tmp_path):
    settings = dict(json.loads((plain / 'record.json').read_text())['config'], dataset=str(data))
    words = [sys.executable, '-c', worker, json.dumps(settings), str(tmp_path)]
    process, file = subprocess.Popen(words), tmp_path / plain.name / 'epochs.csv'
    until = time.monotonic() + 60
    while not file.exists() and time.monotonic() < until and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < len(pd.read_csv(file)) < 3
    subprocess.run(words, check=True, timeout=120)
    history = json.loads((plain / 'record.json').read_text())['history']
    assert pd.read_csv(file).loss.tolist() == [e['loss'] for e in history]
    steps, values = curve(file.parent / 'tensorboard', 'loss/joint')
    assert steps == [1, 2, 3] and values == pytest.approx([e['loss'] for e in history])
    assert len(os.listdir(file.parent / 'tensorboard')) > 1
    assert [(file.parent / n).read_bytes() == (plain / n).read_bytes() for n in KEPT] == [True] * len(KEPT)


class Away(Tracker):
    "A server that goes away at some message."

    def __init__(self, at):
        super().__init__()
        self.at, self.heard = at, []

    def hear(self, what):
        self.heard.append(what)
        if what == self.at:
            raise ConnectionError('nobody answers')

    def started(self, run, settings):
        self.hear('started')

    def epoch(self, numbers):
        self.hear('epoch')

    def ended(self, summary):
        self.hear('ended')


@pytest.mark.parametrize('at, heard', [('started', 1), ('epoch', 2), ('ended', 5)])
def test_a_tracker_that_fails_says_so_once_and_the_run_goes_on(at, heard, data, plain, tmp_path, capsys):
    away, whole = Away(at), Away('never')
    record = run(small(dataset=str(data), **FAST), tmp_path, progress=False, track=[away, whole])
    said = capsys.readouterr().out
    assert said.count('nobody answers') == 1 and 'track: Away failed and is left out from here on' in said
    assert len(away.heard) == heard and whole.heard == ['started', *['epoch'] * 3, 'ended']
    assert record['files'] == json.loads((plain / 'record.json').read_text())['files']


def test_a_recommender_takes_trackers(tmp_path):
    Recommender.fit(ring(), tmp_path / 'runs', progress=False, track=f'csv={tmp_path}', **sizes())
    assert [p.suffix for p in tmp_path.iterdir() if p.is_file()] == ['.csv']


def sizes():
    c = small(**FAST)
    return {k: getattr(c, k) for k in ('dim', 'ffn', 'max_length', 'batch_size', 'epochs', 'n_negatives', 'share')}


class FakeClient:
    "What MLflow's client is asked, kept in a dictionary that outlives it."

    def __init__(self, tracking_uri, store):
        self.uri, self.store = tracking_uri, store

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id='1') if 'experiment' in self.store else None

    def create_experiment(self, name):
        self.store['experiment'] = name
        return '1'

    def search_runs(self, experiments, wanted):
        return [run for run in self.store.get('runs', []) if wanted.endswith(f"'{run.name}'")]

    def create_run(self, experiment, tags, run_name):
        made = SimpleNamespace(name=tags['molrec.run'], info=SimpleNamespace(run_id=run_name))
        self.store.setdefault('runs', []).append(made)
        return made

    def log_batch(self, run, metrics=(), params=()):
        self.store.setdefault('metrics', []).extend(metrics)
        self.store.setdefault('params', []).extend(params)

    def get_metric_history(self, run, key):
        return [m for m in self.store.get('metrics', []) if m.key == key]

    def set_terminated(self, run):
        self.store['ended'] = True


def test_mlflow_gets_every_epoch_once_and_names_without_an_at_sign(monkeypatch, tmp_path):
    "A tiny module in the place of the library: the real one was tried by hand."
    store = {}
    entities = SimpleNamespace(
        Param=lambda key, value: (key, value),
        Metric=lambda key, value, timestamp, step: SimpleNamespace(key=key, value=value, step=step),
    )
    module = SimpleNamespace(MlflowClient=lambda tracking_uri: FakeClient(tracking_uri, store), entities=entities)
    monkeypatch.setitem(sys.modules, 'mlflow', module)
    history = [{'stage': 'joint', 'epoch': e, 'loss': 1.0 / e, 'valid_hr@10': 0.1} for e in (1, 2, 3)]
    for n in (2, 3):
        (tracker,) = read_trackers(f'mlflow={tmp_path}')
        tracker.started(tmp_path / 'a-run', dict(lr=0.1))
        assert isinstance(tracker, MLflow) and tracker.client.uri == f'sqlite:///{tmp_path}/mlflow.db'
        for numbers in history[:n]:
            tracker.epoch(numbers)
    tracker.ended({'test/hr@10': 0.2, 'best_epoch': 2})
    assert [m.step for m in store['metrics'] if m.key == 'loss/joint'] == [1, 2, 3]
    assert {m.key for m in store['metrics']} >= {'valid_hr_at_10', 'test/hr_at_10'}
    assert len(store['runs']) == 1 and store['ended'] and ('lr', '0.1') in store['params']


def test_every_tracker_is_declared_where_the_others_are():
    assert names('tracker') == ('csv', 'table', 'tensorboard', 'mlflow', 'wandb')
