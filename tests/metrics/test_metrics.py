"Metrics against torchmetrics, intervals against scipy, and the edges of ranking."

import json
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy
import torch
from scipy import stats
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMRR, RetrievalNormalizedDCG, RetrievalRecall

from molrec.base.errors import ConfigError, DataError
from molrec.data.sequences import Sequences
from molrec.metrics import from_ranks
from molrec.metrics.from_ranks import (
    average_precision_at_k,
    hr_at_k,
    mrr,
    ndcg_at_k,
    precision_at_k,
    recall_at_k,
    summary,
)
from molrec.metrics.from_scores import target_ranks
from molrec.metrics.intervals import bootstrap_ci, holm, paired_test
from molrec.metrics.ranks import Ranks, by_name, metric, metrics, per_user_metric
from molrec.records.tables import read_ranks
from molrec.tasks.evaluation import top_counts


def seeded(seed: int) -> dict:
    "The argument by which scipy is given its random numbers; before 1.15 it had another name."
    old = tuple(map(int, scipy.__version__.split('.')[:2])) < (1, 15)
    return {'random_state' if old else 'rng': np.random.default_rng(seed)}


def random_case(seed, single=False, n_users=23, n_items=60):
    "Distinct scores above 0 (torchmetrics takes others as not retrieved), a history without the targets."
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(np.stack([1 + rng.permutation(n_items) for _ in range(n_users)]).astype(np.float32))
    targets, history = [], []
    for _ in range(n_users):
        items = rng.permutation(n_items)
        n = 1 if single else rng.integers(1, 15)
        targets.append(items[:n])
        history.append(items[n : n + rng.integers(0, 20)])
    return scores, targets, history


def flat(lists):
    return np.concatenate([np.asarray(x, dtype=np.int64) for x in lists]), np.cumsum([0] + [len(x) for x in lists])


def ranks_of(scores, targets, history, **kwargs):
    found = target_ranks(scores, flat(targets), flat(history), **kwargs)
    return Ranks(np.arange(len(targets)), flat(targets)[1], found.numpy())


def oracle(metric, scores, targets, history):
    "torchmetrics over the unseen items of every user."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for user, (wanted, seen) in enumerate(zip(targets, history)):
            keep = np.setdiff1d(np.arange(scores.shape[1]), seen)
            relevant = torch.from_numpy(np.isin(keep, wanted))
            metric.update(scores[user, keep], relevant, indexes=torch.full((len(keep),), user))
        return float(metric.compute())


@pytest.mark.parametrize('single', [True, False])
@pytest.mark.parametrize('k', [1, 3, 10, 40, 1000])
@pytest.mark.parametrize(
    'ours,theirs', [(hr_at_k, RetrievalHitRate), (recall_at_k, RetrievalRecall), (ndcg_at_k, RetrievalNormalizedDCG)]
)
def test_metrics_equal_torchmetrics(ours, theirs, k, single):
    for seed in range(3):
        case = random_case(seed, single)
        top_k = min(k, case[0].shape[1])
        assert ours(ranks_of(*case), k).mean() == pytest.approx(oracle(theirs(top_k=top_k), *case), abs=1e-6)


@pytest.mark.parametrize('single', [True, False])
def test_mrr_equals_torchmetrics(single):
    case = random_case(7, single)
    assert mrr(ranks_of(*case)).mean() == pytest.approx(oracle(RetrievalMRR(), *case), abs=1e-6)


def slow_rank(scores, t, hidden):
    "The definition, one item at a time."
    if t in hidden:
        return len(scores) + 1
    return 1 + sum(x != t and x not in hidden and not scores[x] < scores[t] for x in range(len(scores)))


@pytest.mark.parametrize('repeats', ['exclude', 'allow'])
def test_ranks_equal_the_definition_with_ties_nan_and_repeats(repeats):
    rng = np.random.default_rng(0)
    for trial in range(50):
        b, N = int(rng.integers(1, 6)), int(rng.integers(1, 12))
        scores = rng.choice([0.0, 1.0, 2.0, np.nan, np.inf, -np.inf], size=(b, N)).astype(np.float32)
        targets = [rng.permutation(N)[: rng.integers(1, 5)] for _ in range(b)]
        history = [rng.integers(0, N, rng.integers(0, 8)) for _ in range(b)]
        hidden = history if repeats == 'exclude' else [()] * b
        expected = [slow_rank(scores[u], t, hidden[u]) for u in range(b) for t in targets[u]]
        for max_pairs in (1, 2 * N, 2**22):
            got = target_ranks(torch.from_numpy(scores), flat(targets), flat(history), repeats, max_pairs=max_pairs)
            assert got.tolist() == expected
        Ranks(np.arange(b), flat(targets)[1], got.numpy(), n_items=N)  # every such ranking is one that Ranks takes


def test_what_is_in_the_history_is_no_hit_at_any_k():
    scores = torch.tensor([[9.0, 5.0, 1.0]] * 2)
    asked, seen = ([0, 1, 0], [0, 2, 3]), ([0, 0], [0, 1, 2])
    excluded = Ranks([0, 1], asked[1], target_ranks(scores, asked, seen).numpy(), n_items=3)
    assert excluded.ranks.tolist() == [4, 1, 4]
    for k in (1, 3, 4, 500):
        assert hr_at_k(excluded, k).tolist() == [1, 0] and recall_at_k(excluded, k).tolist() == [0.5, 0]
    assert mrr(excluded).tolist() == [1, 0]
    allowed = target_ranks(scores, asked, seen, 'allow')
    assert allowed.tolist() == [1, 2, 1]
    assert target_ranks(scores, asked, None, 'allow').tolist() == [1, 2, 1]  # the history is not looked at
    with pytest.raises(DataError, match="repeats: got 'hide', wanted 'exclude' or 'allow'"):
        target_ranks(scores, asked, seen, 'hide')


def test_lists_show_what_the_metric_can_hit():
    "Nine items, of which user 0 has met three and user 1 none: a top ten holds six and nine."
    seen, scores = Sequences(np.arange(2), np.array([0, 4, 4]), np.array([8, 7, 6, 8])), torch.arange(9.0).repeat(2, 1)
    assert top_counts(scores.clone(), seen, 10).tolist() == [2] * 6 + [1] * 3
    assert top_counts(scores.clone(), seen, 2).tolist() == [0] * 4 + [1, 1, 0, 1, 1]
    assert top_counts(scores.clone(), seen, 10, 'allow').tolist() == [2] * 9
    asked = (np.tile(np.arange(9), 2), [0, 9, 18])
    for repeats, hit in (('exclude', 15), ('allow', 18)):
        ranks = Ranks([0, 1], asked[1], target_ranks(scores, asked, (seen.items, seen.offsets), repeats).numpy(), 9)
        assert from_ranks.hits(ranks, 10).sum() == hit == top_counts(scores.clone(), seen, 10, repeats).sum()


def test_an_item_is_asked_once():
    scores, none = torch.rand(2, 5), ([], [0, 0, 0])
    with pytest.raises(DataError, match='item 3 is asked 2 times of the user in row 1'):
        target_ranks(scores, ([3, 3, 0, 3], [0, 1, 4]), none)


def test_repeated_purchases_give_an_ndcg_of_one_at_most():
    "Six purchases of two items: asked six times, their NDCG@1 was 4."
    scores = torch.tensor([[3.0, 2.0, 1.0]])
    bought = np.array([0, 0, 0, 0, 1, 1])
    asked = np.unique(bought)
    ranks = Ranks([7], [0, 2], target_ranks(scores, (asked, [0, 2]), ([], [0, 0])).numpy())
    assert ndcg_at_k(ranks, 1) == ndcg_at_k(ranks, 10) == 1
    with pytest.raises(DataError, match='user 7: 2 targets within the first 1 ranks; each target is a distinct item'):
        Ranks([7], [0, 6], [1, 1, 1, 1, 2, 2])
    with pytest.raises(DataError, match='user 8: 3 targets within the first 2'):
        Ranks([7, 8], [0, 1, 4], [1, 2, 2, 2])
    Ranks([7], [0, 3], [3, 3, 3])  # three that tie: each counts the others against itself


def test_ndcg_is_never_above_one():
    rng = np.random.default_rng(0)
    for _ in range(100):
        counts = rng.integers(1, 30, 20)
        drawn = np.concatenate([rng.permutation(40)[:n] + 1 for n in counts])
        ranks = Ranks(np.arange(20), np.r_[0, counts.cumsum()], drawn)
        for k in (1, 2, 7, 40, 1_000):
            assert ndcg_at_k(ranks, k).max() <= 1


def test_blocks_of_targets_do_not_change_ranks():
    case = random_case(1)
    whole = ranks_of(*case).ranks
    assert all((ranks_of(*case, max_pairs=m).ranks == whole).all() for m in (1, 61, 1000))
    single = random_case(1, single=True)
    assert (ranks_of(*single, max_pairs=130).ranks == ranks_of(*single).ranks).all()


@pytest.mark.parametrize('value', [0.0, 3.5, float('nan'), float('-inf'), float('inf')])
def test_constant_scorer_is_last(value):
    scores, targets, history = random_case(3, single=True)
    ranks = ranks_of(torch.full_like(scores, value), targets, history)
    assert (ranks.ranks == [scores.shape[1] - len(h) for h in history]).all()
    assert hr_at_k(ranks, 10).sum() == 0


def test_scores_are_left_alone_and_any_float_works():
    scores, targets, history = random_case(4)
    before = scores.clone()
    fp32 = ranks_of(scores, targets, history).ranks
    assert torch.equal(scores, before)
    assert (ranks_of(scores.double(), targets, history).ranks == fp32).all()
    assert (ranks_of(scores.bfloat16(), targets, history).ranks == fp32).all()
    assert (ranks_of(scores.T.contiguous().T, targets, history).ranks == fp32).all()


def test_target_ranks_refuses_bad_lists():
    scores = torch.zeros(2, 5)
    none = ([], [0, 0, 0])
    with pytest.raises(DataError, match='targets: 2 offsets for 2 users'):
        target_ranks(scores, ([1], [0, 1]), none)
    with pytest.raises(DataError, match='targets: ids must be in 0..4'):
        target_ranks(scores, ([1, 5], [0, 1, 2]), none)
    with pytest.raises(DataError, match='history: ids must be'):
        target_ranks(scores, ([1, 2], [0, 1, 2]), ([-1], [0, 1, 1]))
    assert len(target_ranks(torch.zeros(0, 5), ([], [0]), ([], [0]))) == 0


def test_k_beyond_the_catalogue_hits_everything():
    ranks = ranks_of(*random_case(5))
    assert hr_at_k(ranks, 10**9).min() == recall_at_k(ranks, 10**9).min() == 1
    assert ndcg_at_k(ranks, 10**9).max() <= 1


def test_ranks_are_checked():
    with pytest.raises(DataError, match='user 6 has no target'):
        Ranks([5, 6], [0, 2, 2], [1, 2])
    with pytest.raises(DataError, match='ranks start at 1, got 0'):
        Ranks.single([5], [0])
    with pytest.raises(DataError, match='offsets must run'):
        Ranks([5], [0, 2], [1])
    with pytest.raises(DataError, match='of 9 items the last rank is 10'):
        Ranks.single([5], [11], n_items=9)
    with pytest.raises(DataError, match='n_items must be at least 1'):
        Ranks.single([5], [1], n_items=0)
    for metric in (hr_at_k, recall_at_k, ndcg_at_k):
        with pytest.raises(ValueError, match='k must be at least 1'):
            metric(np.array([1]), 0)


@pytest.mark.parametrize(
    'odd',
    [
        [10.5],
        [1, np.nan],
        [np.inf],
        [-np.inf],
        [1e300],
        [2.0**60],
        [True],
        [1j],
        ['1'],
        [None],
        [[1]],
        np.array([2**63], dtype='u8'),
        np.array(['2021-03-01'], dtype='M8[D]'),
        [2**70],
    ],
)
def test_what_is_no_whole_number_is_no_rank(odd):
    with pytest.raises(DataError, match='^(ranks|offsets): got .*, wanted'):
        Ranks.single(np.arange(len(odd)), odd)
    with pytest.raises(DataError, match='^offsets: got'):
        Ranks([0], odd, [1])


@pytest.mark.parametrize('bad', [0, -1, -2.0])
def test_ranks_start_at_one(bad):
    with pytest.raises(DataError, match='ranks start at 1'):
        Ranks.single([0, 1], [3, bad])


@pytest.mark.parametrize('dtype', ['i1', 'u1', 'i4', 'u8', 'f4', 'f8'])
def test_whole_numbers_of_any_width_are_ranks(dtype):
    ranks = Ranks.single([0, 1], np.array([3, 100], dtype=dtype))
    assert ranks.ranks.tolist() == [3, 100] and ranks.ranks.dtype == np.int64


@pytest.mark.parametrize('users', [['A0007', '0007', '7'], ['NA', 'None', 'nan'], [2**62, -3, 7]])
def test_users_stay_who_they_are(users):
    for given in (users, np.array(users), pd.Series(users), pd.Series(users, dtype=object)):
        kept = Ranks.single(given, [1, 2, 3]).users
        assert kept.tolist() == users and [type(u) for u in kept.tolist()] == [type(u) for u in users]


@pytest.mark.parametrize('users', [[1.5, 2], [1.0, 2.0], [True, False], [1, '1'], ['a', None], [b'a', b'b'], [1, None]])
def test_users_are_whole_numbers_or_text(users):
    with pytest.raises(DataError, match='^users: .*(whole numbers or text|is missing)'):
        Ranks.single(users, [1, 2])


@pytest.mark.parametrize('k', [0, -1, 1.5, '10', None, np.nan])
def test_k_is_a_whole_number_from_one(k):
    for metric in (hr_at_k, recall_at_k, ndcg_at_k, precision_at_k, average_precision_at_k):
        with pytest.raises(DataError, match='k must be'):
            metric(np.array([1]), k)
        assert metric(np.array([1]), np.int64(10)) == metric(np.array([1]), 10)


def test_a_list_is_no_longer_than_the_catalogue():
    ranks = Ranks([0, 1], [0, 2, 4], [1, 10, 10, 10], n_items=9)  # rank 10 of 9: in no list
    for k in (9, 10, 10**9):
        assert hr_at_k(ranks, k).tolist() == [1, 0] and recall_at_k(ranks, k).tolist() == [0.5, 0]
        assert ndcg_at_k(ranks, k).tolist() == [1 / (1 + 1 / np.log2(3)), 0]
    assert average_precision_at_k(ranks, 50).tolist() == [0.5, 0] and mrr(ranks).tolist() == [1, 0]
    assert precision_at_k(ranks, 50).tolist() == [1 / 50, 0]


RECORDS = sorted(Path(__file__).resolve().parents[2].glob('reports/**/ranks.parquet'))


def test_committed_records_are_valid_and_give_what_they_state():
    assert len(RECORDS) > 50
    for file in RECORDS:
        record = json.loads((file.parent / 'record.json').read_text())
        found = read_ranks(file)
        known = Ranks(found.users, found.offsets, found.ranks, n_items=record['split']['n_items'])
        stated = record['metrics']['test']
        assert summary(known) == summary(found) == pytest.approx(stated, abs=1e-12), file.parent.name


# -- names --


def test_a_name_means_one_function():
    with pytest.raises(ConfigError, match="metric 'hr@k' is taken by hr_at_k"):

        @metric('hr@k')
        def another(ranks, k): ...

    with pytest.raises(ConfigError, match='must take `k` exactly if'):

        @metric('other@k')
        def without(ranks): ...

    with pytest.raises(ConfigError, match='must take `k` exactly if'):

        @metric('other')
        def with_k(ranks, k): ...

    assert not {'other', 'other@k'} & set(metrics())


@pytest.mark.parametrize(
    'name,near',
    [
        ('hr@K', None),
        ('ndgc@10', 'ndcg@k'),
        ('recal@5', 'recall@k'),
        ('mr', 'mrr'),
        ('hr', 'hr@k'),
        ('hr@', None),
        ('hr@-1', None),
        ('hr@1.5', None),
        ('mrr@10', None),
        ('', None),
        ('hr@١', None),
    ],
)
def test_an_unknown_name_gets_the_nearest(name, near):
    with pytest.raises(DataError, match='unknown metric') as e:
        by_name(name)
    assert repr(name) in str(e.value) and 'there are hr@k, ' in str(e.value)
    if near:
        assert f'nearest {near!r}' in str(e.value)


def test_whoever_asks_by_name_need_import_no_page_of_metrics():
    "A program that read a record alone knew no metric."
    code = (
        'import sys; from molrec.metrics.ranks import Ranks, metrics, per_user_metric\n'
        'print(per_user_metric("hr@10", ranks=Ranks.single([1, 2], [3, 30])).tolist(), len(metrics()) > 10, "torch" in sys.modules)'
    )
    root = Path(__file__).resolve().parents[2]
    said = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True)
    assert said.stdout == '[1.0, 0.0] True False\n', said.stderr


def test_metrics_by_name():
    ranks = Ranks(['a', 'b'], [0, 3, 5], [12, 3, 40, 1, 2])
    for name, function in dict(
        hr=hr_at_k, recall=recall_at_k, ndcg=ndcg_at_k, precision=precision_at_k, map=average_precision_at_k
    ).items():
        assert (per_user_metric(f'{name}@12', ranks=ranks) == function(ranks, 12)).all()
    assert (per_user_metric('mrr', ranks=ranks, lists=None) == mrr(ranks)).all()
    with pytest.raises(DataError, match='hr@10 needs ranks'):
        per_user_metric('hr@10', ranks=None)
    with pytest.raises(DataError, match='k must be at least 1'):
        per_user_metric('hr@0', ranks=ranks)


def test_precision_and_map_by_hand():
    ranks = Ranks([0, 1], [0, 3, 5], [12, 3, 40, 1, 4])
    assert precision_at_k(ranks, 4).tolist() == [1 / 4, 2 / 4]
    assert average_precision_at_k(ranks, 12) == pytest.approx([(1 / 3 + 2 / 12) / 3, (1 + 2 / 4) / 2])


def test_empty():
    none = np.array([], dtype=np.int64)
    assert all(len(metric(none, 10)) == 0 for metric in (hr_at_k, recall_at_k, ndcg_at_k)) and len(mrr(none)) == 0
    with pytest.raises(DataError, match='no users'):
        summary(none)
    with pytest.raises(DataError, match='no users'):
        bootstrap_ci(none)
    assert len(holm([])) == 0


def test_summary_names():
    means = summary(np.array([1, 20, 700]))
    assert set(means) == {f'{m}@{k}' for m in ('hr', 'ndcg', 'recall') for k in (1, 10, 50, 100, 200, 500)} | {'mrr'}
    assert means['hr@10'] == pytest.approx(1 / 3)


@pytest.mark.parametrize('kind', ['hits', 'reciprocal'])
def test_interval_equals_scipy(kind):
    rng = np.random.default_rng(1)
    values = (rng.random(450) < 0.3).astype(float) if kind == 'hits' else 1 / rng.integers(1, 300, 450)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method='percentile', batch=1000, **seeded(2)
    ).confidence_interval
    ours = bootstrap_ci(values, n_boot=20_000)
    width = theirs.high - theirs.low
    assert abs(ours[0] - theirs.low) < 0.05 * width and abs(ours[1] - theirs.high) < 0.05 * width
    assert ours == bootstrap_ci(values, n_boot=20_000) != bootstrap_ci(values, n_boot=20_000, seed=1)
    assert bootstrap_ci(np.ones(9)) == (1, 1)


def test_interval_of_many_users_with_values_of_their_own_fits_into_memory():
    "20,000 distinct values times 1,000 draws would be 320 MB at once; drawn in parts, the numbers are the same."
    values = np.random.default_rng(0).random(20_000)
    draws = np.random.default_rng(0).multinomial(20_000, np.full(20_000, 1 / 20_000), size=100)
    low, high = np.quantile(draws @ np.sort(values) / 20_000, [0.025, 0.975])
    assert bootstrap_ci(values, n_boot=100) == pytest.approx((low, high), rel=1e-12)
    tracemalloc.start()
    bootstrap_ci(values, n_boot=1_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6


def test_paired_test_equals_scipy():
    rng = np.random.default_rng(3)
    a, b = rng.random((2, 300))
    a = a + 0.03
    theirs = stats.permutation_test(
        (a, b),
        lambda x, y, axis: (x - y).mean(axis),
        permutation_type='samples',
        vectorized=True,
        n_resamples=9_999,
        **seeded(4),
    ).pvalue
    assert paired_test(a, b) == pytest.approx(theirs, abs=0.02)
    assert paired_test(a, b) == paired_test(b, a)
    assert paired_test(a, a) == 1


def test_paired_test_is_calibrated():
    rng = np.random.default_rng(5)
    p = [paired_test(*(rng.random((2, 60)) < 0.4).astype(float), seed=i, n_perm=500) for i in range(200)]
    assert np.mean(np.array(p) < 0.05) < 0.09


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]).tolist() == [1, 1]
