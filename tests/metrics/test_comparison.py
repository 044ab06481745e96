"Systems side by side: the tests of pairs against the formula written out, whatever order the users come in."

import itertools
import os

import numpy as np
import pandas as pd
import pytest

from molrec.base.errors import DataError
from molrec.metrics.comparison import compare, measure_lists, measure_ranks, paired_tests, same_users
from molrec.metrics.evaluation import evaluate_lists
from molrec.metrics.intervals import bootstrap_ci, holm, paired_test
from molrec.metrics.ranks import Ranks

SLOW = pytest.mark.skipif('MOLREC_SLOW' not in os.environ, reason='needs another library: MOLREC_SLOW=1 runs it')


def lists_of(rng, users, n_items=40, k=10) -> pd.DataFrame:
    rows = [(u, i, r + 1) for u in users for r, i in enumerate(rng.permutation(n_items)[:k])]
    return pd.DataFrame(rows, columns=['user_id', 'item_id', 'rank'])


@pytest.fixture
def three():
    rng, users = np.random.default_rng(3), np.arange(80)
    truth = pd.DataFrame(dict(user_id=users, item_id=rng.integers(40, size=80)))
    return truth, {name: lists_of(rng, rng.permutation(users)) for name in 'abc'}


def test_every_pair_is_what_the_formula_says(three):
    truth, lists = three
    systems = {name: measure_lists(t, truth, (5, 10)) for name, t in lists.items()}
    found = compare(systems)
    assert len(found) == 3 * sum(np.ndim(v) for v in systems['a'].values.values())
    for metric, part in found.groupby('metric', sort=False):
        of = {name: s.values[metric] for name, s in systems.items()}
        pairs = list(itertools.combinations('abc', 2))
        p = paired_test(*(np.stack([of[pair[i]] for pair in pairs]) for i in (0, 1)))
        assert part[['a', 'b']].values.tolist() == [['a', 'b'], ['a', 'c'], ['b', 'c']]
        assert np.allclose(part.p, p) and np.allclose(part.p_holm, holm(p)) and (part.p_holm >= part.p).all()
        assert np.allclose(part.difference, [of[a].mean() - of[b].mean() for a, b in pairs])
        assert np.allclose(part[['low', 'high']].iloc[0], bootstrap_ci(of['a'] - of['b']))


def test_a_system_alone_is_what_evaluate_lists_says(three):
    truth, lists = three
    train = lists['b'][['user_id', 'item_id']]
    table, notes = evaluate_lists(lists['a'], truth, (5,), train)
    one = measure_lists(lists['a'], truth, (5,), train)
    pd.testing.assert_frame_equal(one.table, table)
    assert one.notes == notes and np.ndim(one.values['coverage@5']) == 0


def test_the_order_of_the_users_is_nothing(three):
    rng = np.random.default_rng(0)
    a, b = rng.integers(1, 50, (2, 60))
    order = rng.permutation(60)
    straight = compare(
        dict(a=measure_ranks(Ranks.single(np.arange(60), a)), b=measure_ranks(Ranks.single(np.arange(60), b)))
    )
    mixed = measure_ranks(Ranks.single(order.astype(str).astype(object), b[order]))
    text = compare(dict(a=measure_ranks(Ranks.single(np.arange(60), a)), b=mixed))
    pd.testing.assert_frame_equal(straight, text)


def test_users_who_are_missing_are_named_from_either_side():
    few, many = (measure_ranks(Ranks.single(np.arange(n), np.arange(n) + 1)) for n in (3, 4))
    for systems in (dict(few=few, many=many), dict(many=many, few=few)):
        with pytest.raises(DataError, match='few: 3 users, many has 4; user 3 is in many alone'):
            same_users(systems)


def test_another_number_of_targets_is_another_split():
    one, two = Ranks([7], [0, 2], [3, 9]), Ranks([7], [0, 1], [3])
    with pytest.raises(DataError, match='two: user 7 has another number of targets'):
        compare(dict(one=measure_ranks(one), two=measure_ranks(two)))


def test_undefined_users_are_left_out_of_their_metric_alone():
    a, b = np.array([1.0, np.nan, 0.5, 0.25]), np.array([0.0, 1.0, np.nan, 0.75])
    found = paired_tests(dict(a=a, b=b))
    assert found.difference[0] == 0.25 and found.p[0] == paired_test(a[[0, 3]], b[[0, 3]])


def test_one_system_has_no_pairs():
    assert len(paired_tests(dict(a=np.ones(3)))) == 0


# -- lists that other libraries write --

TRUTH = pd.DataFrame(dict(user_id=[f'u{i}' for i in range(20)], item_id=[f'i{i % 7}' for i in range(20)]))


def some_lists() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    rows = [(u, f'i{i}', s) for u in TRUTH.user_id for i, s in zip(rng.permutation(9)[:5], -np.sort(-rng.random(5)))]
    return pd.DataFrame(rows, columns=['user_id', 'item_id', 'score'])


@SLOW
def test_lists_of_rectools_are_measured_as_rectools_measures_them():
    metrics = pytest.importorskip('rectools.metrics', reason='rectools is not installed')
    reco = some_lists().assign(rank=lambda t: t.groupby('user_id').cumcount() + 1)
    ours = measure_lists(reco, TRUTH, (3,)).table.set_index('metric').value
    interactions = TRUTH.assign(weight=1.0, datetime=pd.Timestamp('2024-01-01'))
    for name, theirs in {'hr@3': metrics.HitRate(3), 'recall@3': metrics.Recall(3), 'mrr': metrics.MRR(5)}.items():
        assert ours[name] == pytest.approx(theirs.calc(reco, interactions)), name


@SLOW
def test_lists_of_lenskit_are_measured_as_lenskit_measures_them():
    data = pytest.importorskip('lenskit.data', reason='lenskit is not installed')
    from lenskit.metrics import Recall, RecipRank, RunAnalysis

    ranked = some_lists().assign(rank=lambda t: t.groupby('user_id').cumcount() + 1)
    lists = data.ItemListCollection.from_df(ranked, ['user_id'])
    frame = lists.to_df()
    ours = measure_lists(frame, TRUTH, (5,)).table.set_index('metric').value
    run = RunAnalysis()
    run.add_metric(RecipRank(n=5))
    run.add_metric(Recall(n=5))
    found = run.measure(lists, data.ItemListCollection.from_df(TRUTH, ['user_id'])).list_summary()['mean']
    assert found.tolist() == pytest.approx([ours['mrr'], ours['recall@5']])
