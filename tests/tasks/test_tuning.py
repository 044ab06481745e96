"Tuning: no trial lost or doubled by a kill, nothing chosen by the test part, the price in the record."

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from molrec.base.errors import ConfigError
from molrec.records.run import read_run
from molrec.settings.config import load_config
from molrec.tasks import tuning
from molrec.tasks.examples import ring, small
from molrec.tasks.tuning import keep_best, open_study, row_text, tune, validation_of

SPACE = 'lr=1e-4..1e-1,dropout=0:.4,n_blocks=1..2'
worker = """
import sys
from molrec.tasks.examples import small
from molrec.tasks.tuning import tune
tune(small(dataset=sys.argv[1], epochs=3), sys.argv[2], trials=3, folder=sys.argv[3], progress=False)
"""


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp('world') / 'ring.csv'
    ring().to_csv(path, index=False)
    return path


@pytest.fixture(scope='module')
def tuned(data, tmp_path_factory):
    return tune(small(dataset=str(data), epochs=3), SPACE, 3, tmp_path_factory.mktemp('tuned'), progress=False)


def under_way(folder):
    "Is a trial in its middle, and one before it over?"
    states = [p.parent for p in folder.glob('*/*/state.safetensors')]
    return list(folder.glob('*/*/record.json')) and any(not (p / 'record.json').exists() for p in states)


def outcome(table):
    return table.drop(columns='time_s')


def test_a_study_that_was_killed_ends_with_the_same_trials_each_once(data, tuned, tmp_path):
    words = [sys.executable, '-c', worker, str(data), SPACE, str(tmp_path)]
    process, until = subprocess.Popen(words), time.monotonic() + 90
    while not under_way(tmp_path):
        assert process.poll() is None and time.monotonic() < until, 'the second trial was never under way'
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    study = open_study(tmp_path / tuned.folder.name)
    assert [t.state.is_finished() for t in study.get_trials()].count(True) < 3
    subprocess.run(words, check=True, timeout=120)
    again = tune(small(dataset=str(data), epochs=3), SPACE, 3, tmp_path, progress=False)
    pd.testing.assert_frame_equal(outcome(again.table), outcome(tuned.table))
    assert sorted(p.parent.name for p in tmp_path.glob('*/*/record.json')) == sorted(tuned.table.run)
    assert again.config.lr == tuned.config.lr


def test_every_trial_is_a_record_that_can_be_read_and_its_settings_are_those_of_the_table(tuned):
    for line in tuned.table.to_dict('records'):
        run = read_run(tuned.folder / line['run'])
        assert {k: run.config[k] for k in ('lr', 'dropout', 'n_blocks')} == {
            k: line[k] for k in ('lr', 'dropout', 'n_blocks')
        }
        assert validation_of(run.record) == line['valid hr@10'] == max(e['valid_hr@10'] for e in run.record['history'])


def test_another_test_part_changes_no_trial_and_no_choice(tuned, tmp_path):
    "Planted: every user's last item, which is tested, becomes another one; training and validation are as they were."
    planted = ring()
    last = planted.groupby('user_id').timestamp.transform('max') == planted.timestamp
    rng, items = np.random.default_rng(1), np.sort(planted.item_id.unique())
    planted.loc[last, 'item_id'] = rng.choice(items, last.sum())
    planted = planted.drop_duplicates(['user_id', 'item_id'], keep='first')
    kept = (
        planted.user_id.map(planted.user_id.value_counts())
        == ring().user_id.value_counts().loc[planted.user_id].to_numpy()
    )
    asked = small(dataset='data frame', epochs=3)
    other = tune(asked, SPACE, 3, tmp_path, progress=False, interactions=planted[kept])
    known = tune(
        asked, SPACE, 3, tmp_path, progress=False, interactions=ring()[ring().user_id.isin(planted[kept].user_id)]
    )
    columns = ['trial', 'dropout', 'lr', 'n_blocks', 'valid hr@10', 'epochs']
    pd.testing.assert_frame_equal(other.table[columns], known.table[columns])
    assert other.config.lr == known.config.lr and other.record['metrics']['test'] != known.record['metrics']['test']


def test_the_objective_sees_no_test_metric(data, tmp_path, monkeypatch):
    "Planted: records whose test part is nothing that can be compared."
    ran = tuning.run

    def without_test(*args, **named):
        record = ran(*args, **named)
        return record | dict(
            metrics={k: v for k, v in record['metrics'].items() if k == 'valid'}, test_hr10_by_epoch=None
        )

    monkeypatch.setattr(tuning, 'run', without_test)
    assert len(tune(small(dataset=str(data), epochs=1), 'lr=1e-3|1e-2', 2, tmp_path, progress=False).table) == 2


def test_pruning_ends_hopeless_trials_and_leaves_nothing_of_them(data, tmp_path):
    asked = small(dataset=str(data), epochs=4), 'lr=1e-6..3e-2', 9
    got = tune(*asked, tmp_path, prune=True, progress=False).table
    pruned = got[got.state == 'pruned']
    assert len(pruned) and (pruned.epochs < 4).all() and pruned.run.isna().all()
    assert {p.name for p in tmp_path.glob('*/*') if p.is_dir()} == set(got.run.dropna())


def test_the_chosen_row_is_a_file_that_finds_the_record_and_its_price(tuned, data, tmp_path):
    record = keep_best(tuned, tmp_path / 'runs')
    assert record['notes'][-1] == tuned.note and f'{len(tuned.table)} trials' in tuned.note and ' h)' in tuned.note
    assert read_run(tmp_path / 'runs' / record['id']).record == record == keep_best(tuned, tmp_path / 'runs')
    (tmp_path / 'best.yaml').write_text(row_text(tuned, 'best.yaml'))
    assert (tmp_path / 'best.yaml').read_text().startswith('# molrec run best.yaml\n# chosen by validation hr@10')
    row = load_config(tmp_path / 'best.yaml')
    assert json.dumps([row.lr, row.dropout, row.n_blocks, row.dim]) == json.dumps(
        [tuned.config.lr, tuned.config.dropout, tuned.config.n_blocks, tuned.config.dim]
    )
    assert 'seed' not in (tmp_path / 'best.yaml').read_text()


def test_another_space_or_seed_is_another_study(tmp_path):
    c = small()
    spaces = [tuning.read_space(text, c) for text in ('lr=1e-4..1e-2', 'lr=1e-4..1e-1')]
    named = {tuning.study_name(c, space, seed) for space in spaces for seed in (0, 1)}
    assert len(named) == 4
    with pytest.raises(ConfigError, match='trials: got 0, wanted at least 1'):
        tune(c, 'lr=1e-4..1e-2', 0, tmp_path)
    with pytest.raises(ConfigError, match="optuna: not installed, and wanted here: pip install 'molrec\\[tune\\]'"):
        without_optuna(tmp_path)


def without_optuna(folder):
    sys.modules['optuna'], kept = None, sys.modules['optuna']
    try:
        open_study(folder / 'a-study')
    finally:
        sys.modules['optuna'] = kept
