"What makes a difference: pairs that differ in one thing alone, their direction and interval, and what is missing."

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from old_records import unsealed

from molrec.metrics.from_ranks import hr_at_k
from molrec.records.listing import read_folder
from molrec.records.run import seal
from molrec.report import factors
from molrec.report.examples import make_run
from molrec.settings.config import Config, load_config

CONFIGS = Path(__file__).resolve().parents[2] / 'nbs' / 'configs'
base = dict(tie_order='shuffled', epochs=101, n_negatives=128, share=128, deal=True, loss='sampled-softmax')


def put(folder, name, skill=0.4, public=None, more=None, **settings):
    "A made-up run with these settings."
    kinds = {k: settings.pop(k, v) for k, v in dict(encoder='sasrec', similarity='dot', seed=0).items()}
    where = make_run(
        folder,
        name,
        loss='sampled-softmax',
        skill=skill,
        users=500,
        protocol='leave-last-one-out',
        name=name,
        public=public,
        **kinds,
        **(more or {}),
    )
    found = unsealed(where)
    found['config'] |= base | settings
    (where / 'record.json').write_text(json.dumps(found))
    seal(where)


def lines(folder):
    return factors.difference_lines(factors.of_models(read_folder(folder)[0]))


def settings(**change):
    return factors.described(dataclasses.asdict(Config(**base | dict(encoder='hstu') | change)))


@pytest.mark.parametrize(
    'change,names',
    [
        (dict(row='another label'), set()),
        (dict(ffn=99), set()),  # a label; what hstu does not read
        (dict(n_negatives=1024, share=1024), {'number'}),  # the group goes with the number
        (dict(n_negatives=1024), {'number', 'manner'}),
        (dict(loss='full-softmax'), {'number'}),
        (dict(loss='full-softmax', deal=False, share=9), {'number'}),
        (dict(deal=False), {'manner'}),
        (dict(share=1), {'manner'}),
        (dict(tie_order='stable', tie_seed=3), {'tie_order'}),
        (dict(seed=1), {'seed'}),
        (dict(ask='usual'), {'ask'}),
        (dict(seed=1, dropout=0.3), {'seed', 'dropout'}),
    ],
)
def test_what_two_runs_differ_in(change, names):
    assert factors.apart(settings(), settings(**change)) == names


def test_a_pair_differs_in_one_thing_and_has_a_direction(tmp_path):
    put(tmp_path, 'many', skill=0.5, n_negatives=1024, share=1024)
    put(tmp_path, 'few')
    put(tmp_path, 'both', n_negatives=1024, share=1024, seed=1)  # of 'few' it differs in two
    table = lines(tmp_path)
    assert sorted(table.factor) == ['another seed', 'number of negatives']
    number = table.set_index('factor').loc['number of negatives']
    assert (number['first'], number['second']) == ('128', '1,024') and number.low <= number.difference <= number.high
    runs = {r.label: r for r in read_folder(tmp_path)[0]}
    assert number.difference == pytest.approx(
        hr_at_k(runs['many'].ranks, 10).mean() - hr_at_k(runs['few'].ranks, 10).mean()
    )
    assert table.set_index('factor').loc['another seed'].difference >= 0


def test_runs_of_other_lengths_or_models_make_no_pair(tmp_path):
    put(tmp_path, 'a')
    put(tmp_path, 'b', epochs=8, seed=1)
    put(tmp_path, 'c', encoder='hstu', seed=1)
    put(tmp_path, 'd', encoder='gru4rec', seed=2)
    assert len(lines(tmp_path)) == 0
    assert {r.label for r in factors.of_models(read_folder(tmp_path)[0])} == {'a', 'b', 'c'}


def test_readings_of_one_run(tmp_path):
    asked = {
        a: dict(valid={'hr@10': v}, test={'hr@10': t})
        for a, v, t in (('target', 0.3, 0.30), ('usual', 0.2, 0.27), ('last', 0.25, 0.28))
    }
    put(
        tmp_path,
        'timed',
        encoder='hstu',
        public=(4, 1),
        more=dict(published_way=dict(epoch=9, metrics={'hr@10': 0.31}), asked=asked),
    )
    table = lines(tmp_path).set_index('factor')
    assert table.loc["target's time when asked", 'first'] == 'last'  # validation prefers it
    assert table.loc["target's time when asked", 'difference'] == pytest.approx(0.02)
    assert (
        table.loc['hidden: the last 200', ['low', 'high']].notna().all()
        and table.loc['epoch by test', ['low', 'high']].isna().all()
    )


def test_ranks_of_another_epoch_give_no_interval(tmp_path):
    put(tmp_path, 'best of many', public=(99, 101))  # the record's best epoch is 4
    assert lines(tmp_path).set_index('factor').loc['hidden: the last 200', ['low', 'high']].isna().all()


def test_a_trial_counts_and_what_is_missing_is_named(tmp_path):
    row = dataclasses.asdict(load_config(CONFIGS / 'ml-1m' / 'hstu-dot-32.yaml'))
    put(
        tmp_path,
        'a trial',
        **{k: v for k, v in row.items() if k not in ('row', 'dataset', 'protocol', 'scale', 'loss')}
        | dict(loss='sampled-softmax'),
    )
    left = factors.not_measured(factors.of_models(read_folder(tmp_path)[0]), CONFIGS)
    assert len(left) == len(factors.wanted) - 1 and not left.command.str.contains('hstu-dot-32').any()
    assert 'molrec run nbs/configs/ml-1m/hstu-dot-published.yaml -p deal=false' in set(left.command)


def test_every_wanted_row_makes_a_pair_of_its_factor():
    "A row that is asked for differs from a published one, or from another that is asked for, in its factor alone."
    published = [
        factors.described(vars(load_config(CONFIGS / 'ml-1m' / f'{e}-dot-published.yaml'))) for e in factors.encoders
    ]
    for factor, row, change in factors.wanted:
        mine = factors.described(vars(load_config(CONFIGS / 'ml-1m' / f'{row}.yaml', overrides=change)))
        setting = next(f.setting for f in factors.factors if f.name == factor)
        assert {setting} in [factors.apart(mine, p) for p in published], (
            row,
            change,
            [factors.apart(mine, p) for p in published],
        )


def test_printed_gaps_come_from_the_tables_by_rule():
    gaps = factors.printed_gaps()
    assert (gaps.difference >= 0).all() and set(gaps.kind) == set(factors.gap_kinds)
    twice = gaps[(gaps.kind == factors.gap_kinds[0]) & (gaps['first'] == 'HSTU-large, MoL, public code')]
    assert twice.difference.tolist() == [pytest.approx(0.3474 - 0.3412)]


def test_the_files_depend_on_the_records_alone(tmp_path):
    for seed in range(2):
        put(tmp_path / 'runs', f'seed {seed}', seed=seed)
    one, two = (factors.build_factors(tmp_path / 'runs', tmp_path / out, configs=CONFIGS) for out in ('a', 'b'))
    assert all(f.read_bytes() == two[k].read_bytes() for k, f in one.items()) and set(one) == {
        'svg',
        'png',
        'csv',
        'markdown',
    }
    assert np.isfinite(factors.users_allow(factors.of_models(read_folder(tmp_path / 'runs')[0])))
