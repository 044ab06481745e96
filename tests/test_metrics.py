"Metrics against torchmetrics, intervals against scipy, and the edges of ranking."
import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from torchmetrics.retrieval import (RetrievalHitRate, RetrievalMRR, RetrievalNormalizedDCG, RetrievalRecall)

from molrec.core import DataError
from molrec.metrics import (Ranks, bootstrap_ci, holm, hr_at_k, mrr, ndcg_at_k, paired_test, recall_at_k, summary,
                            target_ranks)


def random_case(seed, single=False, n_users=23, n_items=60):
    "Distinct scores above 0 (torchmetrics takes others as not retrieved), a history without the targets."
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(np.stack([1 + rng.permutation(n_items) for _ in range(n_users)]).astype(np.float32))
    targets, history = [], []
    for _ in range(n_users):
        items = rng.permutation(n_items)
        n = 1 if single else rng.integers(1, 15)
        targets.append(items[:n]); history.append(items[n:n + rng.integers(0, 20)])
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
@pytest.mark.parametrize('ours,theirs', [(hr_at_k, RetrievalHitRate), (recall_at_k, RetrievalRecall),
                                         (ndcg_at_k, RetrievalNormalizedDCG)])
def test_metrics_equal_torchmetrics(ours, theirs, k, single):
    for seed in range(3):
        case = random_case(seed, single)
        top_k = min(k, case[0].shape[1])
        assert ours(ranks_of(*case), k).mean() == pytest.approx(oracle(theirs(top_k=top_k), *case), abs=1e-6)


@pytest.mark.parametrize('single', [True, False])
def test_mrr_equals_torchmetrics(single):
    case = random_case(7, single)
    assert mrr(ranks_of(*case)).mean() == pytest.approx(oracle(RetrievalMRR(), *case), abs=1e-6)


def test_ranks_equal_the_definition_with_ties_nan_and_repeats():
    rng = np.random.default_rng(0)
    for trial in range(50):
        b, N = int(rng.integers(1, 6)), int(rng.integers(1, 12))
        scores = rng.choice([0., 1., 2., np.nan, np.inf, -np.inf], size=(b, N)).astype(np.float32)
        targets = [rng.integers(0, N, rng.integers(1, 5)) for _ in range(b)]
        history = [rng.integers(0, N, rng.integers(0, 8)) for _ in range(b)]
        expected = [1 + sum(x != t and x not in history[u] and not scores[u, x] < scores[u, t] for x in range(N))
                    for u in range(b) for t in targets[u]]
        for max_pairs in (1, 2*N, 2**22):
            got = target_ranks(torch.from_numpy(scores), flat(targets), flat(history), max_pairs=max_pairs)
            assert got.tolist() == expected


def test_blocks_of_targets_do_not_change_ranks():
    case = random_case(1)
    whole = ranks_of(*case).ranks
    assert all((ranks_of(*case, max_pairs=m).ranks == whole).all() for m in (1, 61, 1000))
    single = random_case(1, single=True)
    assert (ranks_of(*single, max_pairs=130).ranks == ranks_of(*single).ranks).all()


@pytest.mark.parametrize('value', [0., 3.5, float('nan'), float('-inf'), float('inf')])
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
    with pytest.raises(DataError, match='targets: 2 offsets for 2 users'): target_ranks(scores, ([1], [0, 1]), none)
    with pytest.raises(DataError, match='targets: ids must be in 0..4'): target_ranks(scores, ([1, 5], [0, 1, 2]), none)
    with pytest.raises(DataError, match='history: ids must be'): target_ranks(scores, ([1, 2], [0, 1, 2]), ([-1], [0, 1, 1]))
    assert len(target_ranks(torch.zeros(0, 5), ([], [0]), ([], [0]))) == 0


def test_k_beyond_the_catalogue_hits_everything():
    ranks = ranks_of(*random_case(5))
    assert hr_at_k(ranks, 10**9).min() == recall_at_k(ranks, 10**9).min() == 1
    assert ndcg_at_k(ranks, 10**9).max() <= 1


def test_ranks_are_checked():
    with pytest.raises(DataError, match='user 6 has no target'): Ranks([5, 6], [0, 2, 2], [1, 2])
    with pytest.raises(DataError, match='ranks start at 1, got 0'): Ranks.single([5], [0])
    with pytest.raises(DataError, match='offsets must run'): Ranks([5], [0, 2], [1])
    for metric in (hr_at_k, recall_at_k, ndcg_at_k):
        with pytest.raises(ValueError, match='k must be at least 1'): metric(np.array([1]), 0)


def test_empty():
    none = np.array([], dtype=np.int64)
    assert all(len(metric(none, 10)) == 0 for metric in (hr_at_k, recall_at_k, ndcg_at_k)) and len(mrr(none)) == 0
    with pytest.raises(DataError, match='no users'): summary(none)
    with pytest.raises(DataError, match='no users'): bootstrap_ci(none)
    assert len(holm([])) == 0


def test_summary_names():
    means = summary(np.array([1, 20, 700]))
    assert set(means) == {f'{m}@{k}' for m in ('hr', 'ndcg', 'recall') for k in (1, 10, 50, 100, 200, 500)} | {'mrr'}
    assert means['hr@10'] == pytest.approx(1/3)


@pytest.mark.parametrize('kind', ['hits', 'reciprocal'])
def test_interval_equals_scipy(kind):
    rng = np.random.default_rng(1)
    values = (rng.random(450) < .3).astype(float) if kind == 'hits' else 1/rng.integers(1, 300, 450)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method='percentile', batch=1000,
                             rng=np.random.default_rng(2)).confidence_interval
    ours = bootstrap_ci(values, n_boot=20_000)
    width = theirs.high - theirs.low
    assert abs(ours[0] - theirs.low) < .05*width and abs(ours[1] - theirs.high) < .05*width
    assert ours == bootstrap_ci(values, n_boot=20_000) != bootstrap_ci(values, n_boot=20_000, seed=1)
    assert bootstrap_ci(np.ones(9)) == (1, 1)


def test_paired_test_equals_scipy():
    rng = np.random.default_rng(3)
    a, b = rng.random((2, 300))
    a = a + .03
    theirs = stats.permutation_test((a, b), lambda x, y, axis: (x - y).mean(axis), permutation_type='samples',
                                    vectorized=True, n_resamples=9_999, rng=np.random.default_rng(4)).pvalue
    assert paired_test(a, b) == pytest.approx(theirs, abs=.02)
    assert paired_test(a, b) == paired_test(b, a)
    assert paired_test(a, a) == 1


def test_paired_test_is_calibrated():
    rng = np.random.default_rng(5)
    p = [paired_test(*(rng.random((2, 60)) < .4).astype(float), seed=i, n_perm=500) for i in range(200)]
    assert np.mean(np.array(p) < .05) < .09


def test_holm_by_hand():
    assert holm([.01, .04, .03, .005]) == pytest.approx([.03, .06, .06, .02])
    assert holm([.6, .7]).tolist() == [1, 1]
