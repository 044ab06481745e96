"The protocol page: the closed form, the families it finds, what it says is missing, and that it depends on the records alone."

import json
import math

import numpy as np
import pandas as pd
import pytest
from old_records import unsealed

from molrec.base.errors import DataError
from molrec.records.run import seal
from molrec.report import protocol, protocol_page, sampled, variance
from molrec.report.examples import make_run
from molrec.report.rows import read_runs

every_source = set(variance.budget_sources)


def put(
    folder,
    row='SASRec, dot product',
    seed=0,
    tie_order='shuffled',
    tie_seed=0,
    again=False,
    record=None,
    public=None,
    **settings,
):
    "A made-up leave-last-one-out run with these settings."
    kinds = {k: settings[k] for k in ('encoder', 'similarity') if k in settings}
    name = 'ml-1m-' + '-'.join(
        map(str, (row.replace(' ', '-').replace(',', ''), seed, tie_order, tie_seed, settings.get('epochs', 101)))
    )
    extra = dict(
        published_way=dict(epoch=70, metrics={'hr@10': 0.3}),
        other_epochs=dict(last={'hr@10': 0.28}, averaged={'hr@10': 0.29}),
    ) | (record or {})
    where = make_run(
        folder,
        row,
        loss='sampled-softmax',
        skill=0.4 + 0.02 * again,
        users=600,
        seed=seed,
        protocol='leave-last-one-out',
        name=name,
        public=public,
        **{'similarity': 'dot', **kinds},
        **extra,
    )
    found = unsealed(where)
    found['config'] |= dict(epochs=101, tie_order=tie_order, tie_seed=tie_seed) | settings
    found['split'] |= dict(
        tie_order=tie_order, fingerprint=(tie_order + str(tie_seed * (tie_order == 'shuffled'))).encode().hex()
    )
    found['environment']['threads'] = 1 if again else 2
    (where / 'record.json').write_text(json.dumps(found))
    seal(where)
    return where


@pytest.fixture(scope='module')
def reports(tmp_path_factory):
    "Every source once, a popularity list, and a short run that is in no family of the others."
    folder = tmp_path_factory.mktemp('reports')
    for seed in range(3):
        put(folder / 'runs', seed=seed)
    put(folder / 'runs', tie_seed=1)
    put(folder / 'runs', 'SASRec, dot product (101 epochs)', tie_order='stable')
    put(folder / 'runs', 'SASRec, short', tie_order='stable', epochs=8)
    put(
        folder / 'runs',
        'Popularity',
        encoder='popularity',
        epochs=8,
        record=dict(published_way=None, other_epochs=None),
    )
    put(folder / 'again', again=True)
    make_run(folder / 'runs', 'SASRec, MoL + BCE')  # another protocol
    return folder


def rows(folder):
    return protocol.last_out(read_runs(folder))


# sampled metrics


@pytest.mark.parametrize('k,n', [(1, 100), (10, 100), (10, 1_000), (5, 5)])
def test_the_closed_form_equals_drawing(k, n):
    rng, M = np.random.default_rng(0), 1_200
    ranks = rng.integers(1, M + 1, 40) ** 2 // M + 1
    drawn = rng.hypergeometric(ranks - 1, M - ranks, n, (20_000, 40))
    assert np.allclose(sampled.sampled_hits(ranks, M, k, n), (drawn < k).mean(0), atol=0.015)
    assert sampled.sampled_hr(ranks, M, k, n) == pytest.approx((drawn < k).mean(), abs=0.003)


def test_all_negatives_give_the_full_metric_and_long_lists_hit_always():
    ranks = np.array([1, 10, 11, 50])
    assert sampled.sampled_hits(ranks, 50, 10, 49).tolist() == [1, 1, 0, 0]
    assert sampled.sampled_hits(ranks, 50, 6, 5).tolist() == [1] * 4


def test_a_rank_beyond_the_mean_catalogue_is_its_last():
    assert sampled.sampled_hits(np.array([60]), 50, 10, 20) == sampled.sampled_hits(np.array([50]), 50, 10, 20)


def test_what_cannot_be_sampled_is_refused():
    for k, n, words in ((0, 10, 'k must be'), (10, 50, 'n_sampled: got 50, wanted 1 to 49'), (10, 0, 'n_sampled')):
        with pytest.raises(ValueError, match=words):
            sampled.sampled_hits(np.array([1]), 50, k, n)
    with pytest.raises(DataError, match='start at 1'):
        sampled.sampled_hits(np.array([0]), 50, 10, 20)


def test_shuffled_ties_are_tabled_and_rows_are_means_over_seeds(reports):
    found = sampled.one_split(rows(reports / 'runs'))
    assert {r.config['tie_order'] for r in found} == {'shuffled'} and len(found) == 2
    table = sampled.sampled_table(found)
    assert table.full.iloc[0] == pytest.approx(
        np.mean(
            [r.record['metrics']['test']['hr@10'] for r in protocol.every(found) if r.config['encoder'] == 'sasrec']
        )
    )
    assert (table.sampled > table.full).all() and table.place.tolist() == [1, 2]


# families


def test_a_family_differs_in_seed_and_ties_alone(reports):
    found = variance.family(rows(reports / 'runs'))
    assert [(r.config['tie_order'], r.config['tie_seed'], r.record['seed']) for r in found] == [
        ('shuffled', 0, 0),
        ('shuffled', 0, 1),
        ('shuffled', 0, 2),
        ('shuffled', 1, 0),
        ('stable', 0, 0),
    ]


def test_published_length_beats_the_larger_family(tmp_path):
    put(tmp_path)
    for seed in range(3):
        put(tmp_path, 'SASRec, short', seed=seed, epochs=8)
    assert [r.config['epochs'] for r in variance.family(rows(tmp_path))] == [101]


def test_without_published_length_the_larger_family_is_taken(tmp_path):
    put(tmp_path, epochs=8)
    for seed in range(2):
        put(tmp_path, 'SASRec, MoL', seed=seed, epochs=8, similarity='mol')
    assert [r.config['similarity'] for r in variance.family(rows(tmp_path))] == ['mol', 'mol']


# the budget


def test_every_source_is_found(reports):
    budget = variance.variance_budget(rows(reports / 'runs'), rows(reports / 'again')).set_index('source')
    assert set(budget.index) == every_source and variance.missing_sources(budget.reset_index()) == ''
    assert budget.n.to_dict() == {
        'bootstrap over users': 600,
        'same seed twice': 2,
        'several seeds': 3,
        'tie order drawn again': 2,
        'tie order: stable or shuffled': 2,
        'epoch rule': 4,
    }
    assert (
        budget.spread.is_monotonic_decreasing
        and (budget.low <= budget.centre).all()
        and (budget.centre <= budget.high).all()
    )
    assert np.allclose(budget.spread, 100 * (budget.high - budget.low))
    assert (
        budget.detail['same seed twice'].startswith('2 threads ')
        and 'the rank differs for' in budget.detail['same seed twice']
    )
    assert {s for s in budget.index if not math.isnan(budget.sd[s])} == {
        'bootstrap over users',
        *variance.chance_sources,
    }


def test_the_same_ranks_twice_are_said_to_be_the_same(tmp_path):
    for part in ('runs', 'again'):
        put(tmp_path / part)
    assert (
        'all ranks are the same' in variance.same_twice(rows(tmp_path / 'runs')[0], rows(tmp_path / 'again'))['detail']
    )


def test_a_second_run_of_other_settings_is_none(tmp_path):
    put(tmp_path / 'runs')
    put(tmp_path / 'again', epochs=8)
    assert variance.same_twice(rows(tmp_path / 'runs')[0], rows(tmp_path / 'again')) is None


def test_missing_sources_are_named(tmp_path):
    put(tmp_path, record=dict(other_epochs=None, published_way=None))
    budget = variance.variance_budget(rows(tmp_path))
    assert set(budget.source) == {'bootstrap over users'}
    said = variance.missing_sources(budget)
    assert (
        all(variance.budget_sources[s][0] in said for s in every_source - {'bootstrap over users'})
        and 'users drawn again' not in said
    )
    assert variance.budget_caption(budget, variance.family(rows(tmp_path))).startswith('Only users drawn again')


def test_records_from_before_a_setting_existed_still_match(tmp_path):
    for seed in range(2):
        where = put(tmp_path, seed=seed)
        if seed:
            continue
        record = unsealed(where)
        del record['config']['tie_seed'], record['other_epochs']
        (where / 'record.json').write_text(json.dumps(record))
    budget = variance.variance_budget(rows(tmp_path)).set_index('source')
    assert budget.n['several seeds'] == 2 and budget.n['epoch rule'] == 2


def test_seeds_are_paired_user_by_user_within_a_split(reports):
    pairs = variance.paired_runs(variance.family(rows(reports / 'runs')))
    assert len(pairs) == 3 and (pairs.changed >= pairs.difference.abs()).all() and pairs.p.between(0, 1).all()


def test_runs_of_fewer_epochs_are_not_averaged_with_long_ones(reports):
    table = protocol.epoch_table(rows(reports / 'runs'))
    assert len(table) == 6 and 'Popularity' not in set(table.row)
    assert '3 runs of 50 epochs or more' in protocol.epoch_remark(table.assign(epochs=[101] * 3 + [8] * 3))


# the public rule, and when it is asked


def both_asked(usual, last):
    "As a record has it; the test reads .02 lower than validation."
    return {
        ask: dict(valid={'hr@10': hr}, test={'hr@10': hr - 0.02})
        for ask, hr in dict(target=0.33, usual=usual, last=last).items()
    }


def test_each_step_of_the_public_rule_is_measured_from_the_record(tmp_path):
    put(tmp_path, public=(80, 1))
    put(tmp_path, 'GRU4Rec, dot product', encoder='gru4rec')
    (line,) = protocol.rule_table(rows(tmp_path)).itertuples()
    steps = rows(tmp_path)[-1].record.get('public_rule') or rows(tmp_path)[0].record['public_rule']
    assert (line.history, line.fed, line.mrr_depth) == tuple(
        steps['steps'][k][m] for k, m in (('history', 'hr@10'), ('fed', 'hr@10'), ('depth', 'mrr'))
    )
    said = protocol.rule_markdown(rows(tmp_path))
    assert f'moves HR@10 by {protocol.points(line.fed - line.history)} to' in said and 'GRU4Rec' not in said


def test_what_knowing_the_time_is_worth_is_chosen_by_validation(tmp_path):
    put(tmp_path, 'HSTU, dot product', encoder='hstu', record=dict(asked=both_asked(usual=0.30, last=0.31)))
    put(tmp_path, 'HSTU, usual', encoder='hstu', ask='usual', record=dict(asked=both_asked(usual=0.32, last=0.31)))
    put(tmp_path)
    table = protocol.asked_table(rows(tmp_path)).set_index('row')
    assert table.chosen.to_dict() == {
        'HSTU, dot product': 'last',
        'HSTU, usual': 'usual',
    } and table.trained.to_dict() == {'HSTU, dot product': 'target', 'HSTU, usual': 'usual'}
    assert table.worth['HSTU, dot product'] == pytest.approx(
        2
    ) and 'worth 2.0 points of HR@10' in protocol.asked_markdown(rows(tmp_path))


def test_without_such_records_nothing_is_said(reports):
    assert protocol.rule_markdown(rows(reports / 'runs')) == protocol.asked_markdown(rows(reports / 'runs')) == ''


# files


def test_the_same_records_give_the_same_bytes(reports, tmp_path):
    first, second = (protocol_page.build_protocol(reports / 'runs', tmp_path / name) for name in 'ab')
    assert set(first) == {
        'protocol',
        'sampled',
        'public-rule',
        'asked',
        'details',
        'variance svg',
        'variance png',
        'variance csv',
        'markdown',
    }
    assert all(first[k].read_bytes() == second[k].read_bytes() for k in first)
    assert not [f for f in tmp_path.rglob('.*')]


def test_the_files_hold_what_was_measured(reports, tmp_path):
    files = protocol_page.build_protocol(reports / 'runs', tmp_path)
    said = files['markdown'].read_text()
    assert 'the published 0.2853' in said and 'Not measured' not in said and '| Popularity |' in said
    assert set(pd.read_csv(files['variance csv']).source) == every_source
    assert pd.read_csv(files['variance csv']).set_index('source').loc['several seeds', 'values'].count(' ') == 2
    assert {'validated', 'last', 'averaged', 'published_way'} <= set(pd.read_csv(files['protocol']))
    assert {'full', 'place', 'sampled', 'sampled_place'} <= set(pd.read_csv(files['sampled']))


def test_without_second_runs_the_figure_says_so(reports, tmp_path):
    said = protocol_page.build_protocol(reports / 'runs', tmp_path, again_dir=tmp_path / 'nothing')[
        'markdown'
    ].read_text()
    assert 'Not measured for want of records: same seed twice (' in said


def test_without_records_there_is_a_sentence(tmp_path):
    files = protocol_page.build_protocol(tmp_path / 'runs', tmp_path)
    assert list(files) == ['markdown'] and files['markdown'].read_text().startswith('No row of MovieLens 1M')


def test_another_data_set_has_no_published_value(tmp_path):
    make_run(
        tmp_path / 'runs',
        'SASRec, dot product',
        similarity='dot',
        dataset='ml-100k',
        protocol='leave-last-one-out',
        users=50,
    )
    said = protocol_page.build_protocol(tmp_path / 'runs', tmp_path, dataset='ml-100k')['markdown'].read_text()
    assert 'MovieLens 100K' in said and 'published 0.' not in said


# details of the model


def test_a_detail_is_measured_between_rows_alike_in_all_else(tmp_path):
    for seed in range(2):
        put(tmp_path, seed=seed)
        put(tmp_path, 'SASRec, no norm', seed=seed, final_norm=False)
        put(tmp_path, 'SASRec, both', seed=seed, final_norm=False, position_init='truncated-normal')
    put(tmp_path, 'SASRec, short', final_norm=False, epochs=8)
    table = protocol_page.detail_table(rows(tmp_path))
    assert table.settings.tolist() == [
        'final_norm',
        'final_norm, position_init',
        'position_init',
        'glu_init',
        'gate_item_dropout',
    ]
    assert table.seeds.tolist() == ['2 and 2', '2 and 2', '', '', ''] and table.p.notna().tolist() == [
        True,
        True,
        False,
        False,
        False,
    ]
    hits = [
        [(r.ranks.best <= 10).mean() for r in row.each]
        for row in rows(tmp_path)
        if row.label.startswith(('SASRec, dot', 'SASRec, no norm'))
    ]
    assert table.difference[0] == pytest.approx(np.mean(hits[1]) - np.mean(hits[0]))
    assert protocol_page.detail_markdown(rows(tmp_path)).count('not measured yet') == 3


def test_records_from_before_the_details_have_ours(tmp_path):
    put(tmp_path)
    assert (
        protocol_page.changed_details(rows(tmp_path)[0].config) == ()
        and protocol_page.detail_table(rows(tmp_path)).difference.isna().all()
    )
