"MoL against the dot product: what is a pair and what is none, the table from records, its words, and the widths that are fair."

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from old_records import unsealed

from molrec.base.errors import DataError
from molrec.metrics.from_ranks import hr_at_k
from molrec.metrics.intervals import crossed_test
from molrec.records.run import seal
from molrec.report import fair_pairs
from molrec.report import mol_against_dot as page
from molrec.report.build import build_report
from molrec.report.examples import make_run
from molrec.report.rows import read_runs
from molrec.settings.config import Config, config_hash, run_id
from molrec.tasks.loading import Sizes

every_part = dict(
    encoder='sasrec', n_negatives=128, share=128, deal=True, epochs=101, batch_size=128, patience=8, eval_every=2
)


def put(
    folder,
    similarity='dot',
    seed=0,
    skill=0.4,
    parameters=226_400,
    scale='quick',
    fingerprint=None,
    users=400,
    **settings,
):
    "A made-up leave-last-one-out run of this recipe, under the name that a run of it has."
    label = f'SASRec, {similarity} {sorted(settings.items())}'
    config = every_part | dict(similarity=similarity, row=label, scale=scale, seed=seed) | settings
    where = make_run(
        folder,
        label,
        similarity=similarity,
        loss='sampled-softmax',
        skill=skill,
        users=users,
        seed=seed,
        protocol='leave-last-one-out',
        scale=scale,
        name=run_id(Config(**config)),
        n_parameters=parameters,
    )
    found = unsealed(where)
    found |= dict(config=dataclasses.asdict(Config(**config)), config_hash=config_hash(Config(**config)))
    if fingerprint:
        found['split']['fingerprint'] = fingerprint * 8
    (where / 'record.json').write_text(json.dumps(found))
    seal(where)
    return where


def put_pair(folder, seeds=range(3), better=0.3, mol=(), **settings):
    for seed in seeds:
        put(folder, seed=seed, **settings)
        put(folder, 'mol', seed=seed, skill=0.4 + better, parameters=937_728, n_uid=1, **dict(mol), **settings)


@pytest.fixture(scope='module')
def smoke(tmp_path_factory):
    "Three seeds of a pair at smoke scale, a wider dot product, thinned data, and rows that belong to no pair."
    folder = tmp_path_factory.mktemp('smoke')
    put_pair(folder, scale='smoke')
    put_pair(folder, scale='smoke', better=0.6, train_fraction=0.1, fingerprint='0a0b0c0d')
    for seed in range(3):
        put(folder, seed=seed, scale='smoke', skill=0.5, dim=160, ffn=160, parameters=935_680)
    put(folder, 'mol', scale='smoke', n_uid=1, skill=2.0, head_width=64)
    put(folder, scale='smoke', skill=2.0, n_negatives=1024)
    return folder


# -- what is a pair --


@pytest.mark.parametrize(
    'other',
    [
        dict(n_negatives=1024),
        dict(share=1024),
        dict(deal=False),
        dict(epochs=8),
        dict(batch_size=64),
        dict(precision='bf16'),
        dict(patience=101),
        dict(eval_every=1),
        dict(encoder='hstu'),
        dict(head_width=64),
        dict(warm_epochs=2),
        dict(loss_share=0.5),
        dict(train_fraction=0.5),
        dict(tie_order='shuffled'),
        dict(position_init='truncated-normal'),
    ],
    ids=str,
)
def test_what_differs_in_more_than_the_similarity_is_no_pair(other):
    dot, mol = dict(every_part, similarity='dot'), dict(every_part, similarity='mol', n_uid=1, glu='geglu')
    assert fair_pairs.shared(dot) == fair_pairs.shared(mol) != fair_pairs.shared(mol | other)


def test_records_from_before_a_setting_existed_still_pair():
    assert fair_pairs.shared(dict(similarity='dot')) == fair_pairs.shared(
        dict(similarity='mol', train_fraction=1.0, final_norm=True, glu_init='xavier')
    )


def test_a_pair_takes_seeds_of_one_recipe_and_the_plainest_of_several(smoke, tmp_path):
    pairs = fair_pairs.pairs_of(read_runs(smoke, 'smoke'))
    assert [(p.config.train_fraction, len(p.dot), len(p.mol), len(p.wider)) for p in pairs] == [
        (1.0, 3, 3, 1),
        (0.1, 3, 3, 0),
    ]
    put_pair(tmp_path, range(1))
    put(tmp_path, 'mol', skill=3.0, n_uid=1, glu_init='xavier')
    (pair,) = fair_pairs.pairs_of(read_runs(tmp_path))
    assert pair.mol[0].config['glu_init'] == 'normal'


# -- the table --


def test_the_table_is_the_test_over_users_and_seeds(smoke):
    pairs = fair_pairs.pairs_of(read_runs(smoke, 'smoke'))
    table = page.pairs_table(pairs)
    assert len(table) == 3 * 4 and table.metric.tolist()[:4] == ['hr@10', 'ndcg@10', 'mrr', 'hr@50']
    a, b = (np.stack([hr_at_k(r.ranks, 10) for r in row]) for row in (pairs[0].mol, pairs[0].dot))
    assert table.loc[0, ['difference', 'half', 'p']].tolist() == pytest.approx(crossed_test(a, b))
    assert (table.p_holm >= table.p).all() and table.p_holm.max() <= 1 and table.why.tolist()[4] == 'as many parameters'
    assert table.gain[0] == pytest.approx(a.mean() / b.mean() - 1)


def test_one_seed_a_side_has_no_p_and_two_conclude_nothing(tmp_path):
    put_pair(tmp_path, range(1))
    table = page.pairs_table(fair_pairs.pairs_of(read_runs(tmp_path)))
    assert table.p.isna().all() and table.difference.gt(0).all()
    put_pair(tmp_path, range(1, 2))
    pairs = fair_pairs.pairs_of(read_runs(tmp_path))
    assert page.pairs_table(pairs).p.notna().all()
    said = page.against_markdown(pairs)
    assert 'nothing is concluded' in said and '| SASRec\\* | HR@10 |' in said


def test_other_users_are_refused(tmp_path):
    put(tmp_path)
    put(tmp_path, 'mol', n_uid=1, users=500)
    with pytest.raises(DataError, match='were tested on different users'):
        page.pairs_table(fair_pairs.pairs_of(read_runs(tmp_path)))


# -- the words --


def test_the_conclusion_follows_the_table(tmp_path):
    put_pair(tmp_path / 'up', better=0.5)
    put_pair(tmp_path / 'down', better=-0.5)
    put_pair(tmp_path / 'level', better=0.0)
    said = {
        name: ' '.join(page.conclusions(page.pairs_table(fair_pairs.pairs_of(read_runs(tmp_path / name)))).values())
        for name in ('up', 'down', 'level')
    }
    assert said['up'].startswith('MoL is higher: SASRec (4 of 4') and said['up'].endswith(
        'No wider dot product has been measured yet.'
    )
    assert said['down'].startswith('MoL is lower: SASRec (4 of 4') and 'cannot be told apart' in said['level']


# -- what is fair --


def test_widths_are_those_that_count():
    sizes, dot = Sizes(100, 200), Config(dim=20, ffn=20, n_heads=2)
    for wanted in (5_000, 20_000, 100_000):
        D = fair_pairs.width_of_parameters(dot, wanted, sizes)
        gaps = [
            abs(fair_pairs.n_parameters(fair_pairs.widened(dot, d), sizes) - wanted) for d in (D - 2, D, D + 2) if d > 0
        ]
        assert D % 2 == 0 and min(gaps) == abs(fair_pairs.n_parameters(fair_pairs.widened(dot, D), sizes) - wanted)
    mol = Config(similarity='mol', n_query=4, n_item=3, width=16, gate_hidden=8)
    assert fair_pairs.item_numbers(mol) == 3 * 16 + 12 and fair_pairs.pair_operations(mol) == 2 * 12 * 16 + 4 * 12 * 8
    assert fair_pairs.item_numbers(Config(similarity='mol', gates='query+pair')) == 256


# -- what is missing --


def test_what_has_no_record_is_a_command(tmp_path):
    "Rows of files are paired by the same rule; a seed that is recorded is not asked for again."
    (tmp_path / 'configs' / 'ml-1m').mkdir(parents=True)
    common = 'seeds: [0, 1]\nprotocol: leave-last-one-out\nencoder: sasrec\nloss: sampled-softmax\nn_negatives: 128\nshare: 128\ndeal: true\nepochs: 101\nbatch_size: 128\npatience: 8\neval_every: 2\n'
    for name, more in {
        'sasrec-dot-a': 'row: a\nsimilarity: dot\n',
        'sasrec-mol-a': 'row: b\nsimilarity: mol\nn_uid: 1\n',
        'sasrec-mol-tried': 'row: c\nsimilarity: mol\nn_uid: 1\nglu_init: xavier\n',
        'sasrec-dot-wide': 'row: d\nsimilarity: dot\ndim: 160\nffn: 160\n',
        'sasrec-mol-head': 'row: e\nsimilarity: mol\nn_uid: 1\nhead_width: 64\n',
        'hstu-dot-a': 'row: f\nsimilarity: dot\nencoder: hstu\n',
    }.items():
        (tmp_path / 'configs' / 'ml-1m' / f'{name}.yaml').write_text(
            (common if 'hstu' not in more else common.replace('encoder: sasrec\n', '')) + more
        )
    rows = fair_pairs.in_pairs(fair_pairs.planned(tmp_path / 'configs'))
    assert [f.stem for f, c in rows if c.seed == 0] == ['sasrec-dot-a', 'sasrec-dot-wide', 'sasrec-mol-a'] and len(
        rows
    ) == 6
    put_pair(tmp_path / 'runs', range(1))
    assert fair_pairs.missing(rows, read_runs(tmp_path / 'runs')) == [
        'molrec run nbs/configs/ml-1m/sasrec-dot-a.yaml -p seed 1',
        'for s in 0 1; do molrec run nbs/configs/ml-1m/sasrec-dot-wide.yaml -p seed $s; done',
        'molrec run nbs/configs/ml-1m/sasrec-mol-a.yaml -p seed 1',
    ]


# -- density and files --


def test_the_files_are_made_from_smoke_records_and_are_the_same_twice(smoke, tmp_path):
    first, second = (page.build_against(smoke, tmp_path / name, 'smoke') for name in 'ab')
    assert set(first) == {'markdown', 'table', 'density svg', 'density png', 'density csv'}
    assert all(first[k].read_bytes() == second[k].read_bytes() for k in first)
    density = pd.read_csv(first['density csv'])
    assert density.fraction.tolist() in ([0.1, 1.0], [1.0, 0.1]) and density.gain.gt(0).all()
    html = page.against_html(first)
    assert '<svg' in html and '<table' in html and 'thinned: the gain of MoL' in html


def test_data_of_ones_own_go_by_the_name_of_their_file():
    assert page.data_title('a/folder/events.csv', 'stable') == 'events'


def test_without_records_there_is_a_sentence(tmp_path):
    files = page.build_against(tmp_path, tmp_path)
    assert list(files) == ['markdown'] and files['markdown'].read_text() == page.nothing + '\n'


def test_thinned_rows_stand_in_no_table_of_results(smoke, tmp_path):
    files = build_report(smoke, tmp_path, 'smoke')
    assert 'train_fraction' not in files['markdown'].read_text() and '160' in files['markdown'].read_text()
