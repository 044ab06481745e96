"Metrics of lists against definitions written out with loops, against ranx, ir-measures and RecTools where they are installed, and the doors of `evaluate_lists`."

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from molrec.base.errors import DataError
from molrec.metrics.evaluation import evaluate_lists, evaluate_ranks
from molrec.metrics.lists import burges_ndcg_at_k, coverage_at_k, diversity_at_k, ranks_in
from molrec.metrics.ranks import Ranks, by_name, metrics, per_user_metric

SEEDS, KS = range(4), (1, 3, 10, 40)


class Case:
    "Lists, truth, training and features of made-up users, as a file would hold them."

    def __init__(self, seed, n_users=25, n_items=40, n_unknown=8):
        rng = np.random.default_rng(seed)
        self.users, ids = [f'{u:04d}' for u in range(n_users)], [f'i{i}' for i in range(n_items + n_unknown)]
        self.catalogue = ids[:n_items]  # the others are listed and asked too, and nobody knows them
        self.lists = {u: list(rng.permutation(ids)[: rng.choice([0, 1, 2, 5, 12])]) for u in self.users}
        self.truth = {
            u: {i: int(rng.integers(1, 6)) for i in rng.permutation(ids)[: rng.integers(1, 9)]} for u in self.users
        }
        self.train = [
            (f'{rng.integers(60)}', ids[int(n_items * rng.random() ** 2)]) for _ in range(400)
        ]  # with repeats
        parts = 'abcd'
        self.sets = {i: {p for p in parts if rng.random() < 0.4} for i in self.catalogue}
        self.vectors = {i: rng.normal(size=3) * (rng.random() < 0.9) for i in self.catalogue}

    def tables(self, features='sets', rng=None):
        "The five tables, in any order of rows."
        lists = pd.DataFrame(
            [(u, i, r) for u, items in self.lists.items() for r, i in enumerate(items, 1)],
            columns=['user_id', 'item_id', 'rank'],
        )
        truth = pd.DataFrame(
            [(u, i, g) for u, items in self.truth.items() for i, g in items.items()],
            columns=['user_id', 'item_id', 'rating'],
        )
        if rng is not None:
            lists, truth = (t.sample(frac=1, random_state=rng) for t in (lists, truth))
        train = pd.DataFrame(self.train, columns=['user_id', 'item_id'])
        of_items = pd.DataFrame(dict(item_id=self.catalogue))
        if features == 'sets':
            of_items['genres'] = ['|'.join(sorted(self.sets[i])) for i in self.catalogue]
        else:
            of_items[['x', 'y', 'z']] = np.stack([self.vectors[i] for i in self.catalogue])
        return dict(
            lists=lists,
            truth=truth,
            train=train,
            features=of_items,
            catalogue=pd.DataFrame(dict(item_id=self.catalogue)),
        )


# -- the definitions, written out --


def met(case, item):
    return len({u for u, i in case.train if i == item})


def mean(values):
    return sum(values) / len(values) if values else math.nan


def slow_ndcg(case, u, k, gain):
    earned = sum(
        gain(case.truth[u][i]) / math.log2(r + 1) for r, i in enumerate(case.lists[u][:k], 1) if i in case.truth[u]
    )
    best = sorted((gain(g) for g in case.truth[u].values()), reverse=True)[:k]
    return earned / sum(g / math.log2(r + 1) for r, g in enumerate(best, 1))


def slow_average_precision(case, u, k):
    right = [i in case.truth[u] for i in case.lists[u][:k]]
    return sum(sum(right[:r]) / r for r in range(1, len(right) + 1) if right[r - 1]) / len(case.truth[u])


def slow_serendipity(case, u, k):
    N, total = len(case.catalogue), 0
    levels = sorted({met(case, i) for i in {i for _, i in case.train}}, reverse=True)
    for r, i in enumerate(case.lists[u][:k], 1):
        expected = (N + 1 - (levels.index(met(case, i)) + 1)) / N if met(case, i) else 0
        if i in case.truth[u]:
            total += max((N + 1 - r) / N - expected, 0)
    return total / k


def slow_novelty(case, u, k):
    n = len({u for u, _ in case.train})
    return mean([-math.log2(max(met(case, i), 1) / n) for i in case.lists[u][:k]])


def jaccard(case, i, j):
    a, b = case.sets.get(i, set()), case.sets.get(j, set())
    return 1 - len(a & b) / len(a | b) if a and b else None


def cosine(case, i, j):
    a, b = (case.vectors.get(x, np.zeros(3)) for x in (i, j))
    return 1 - float(a @ b) / math.sqrt(a @ a) / math.sqrt(b @ b) if a.any() and b.any() else None


def slow_diversity(case, u, k, distance):
    return mean([d for i, j in itertools.combinations(case.lists[u][:k], 2) if (d := distance(case, i, j)) is not None])


def slow_coverage(case, k):
    return len({i for items in case.lists.values() for i in items[:k]} & set(case.catalogue)) / len(case.catalogue)


def right(case, u, k):
    return sum(i in case.truth[u] for i in case.lists[u][:k])


SLOW = {
    'hr@k': lambda c, u, k: float(right(c, u, k) > 0),
    'recall@k': lambda c, u, k: right(c, u, k) / len(c.truth[u]),
    'precision@k': lambda c, u, k: right(c, u, k) / k,
    'ndcg@k': lambda c, u, k: slow_ndcg(c, u, k, lambda g: 1),
    'ndcg-graded@k': lambda c, u, k: slow_ndcg(c, u, k, lambda g: g),
    'ndcg-burges@k': lambda c, u, k: slow_ndcg(c, u, k, lambda g: 2**g - 1),
    'map@k': slow_average_precision,
    'mrr': lambda c, u, k: max([1 / r for r, i in enumerate(c.lists[u], 1) if i in c.truth[u]], default=0.0),
    'novelty@k': slow_novelty,
    'serendipity@k': slow_serendipity,
}


def slow(case, name, distance=jaccard):
    "A metric per user, or of all, by its definition."
    metric, k = by_name(name)
    if metric.name == 'coverage@k':
        return slow_coverage(case, k)
    if metric.name == 'diversity@k':
        return [slow_diversity(case, u, k, distance) for u in case.users]
    return [SLOW[metric.name](case, u, k) for u in case.users]


DEFINED = {*SLOW, 'coverage@k', 'diversity@k'}


def test_what_is_defined_here_is_registered():
    assert DEFINED <= set(metrics())


def check_against_definitions(case, table, distance=jaccard):
    for row in table.itertuples():
        if by_name(row.metric)[0].name not in DEFINED:
            continue  # of somebody else: held to what all metrics are held to
        expected = slow(case, row.metric, distance)
        if np.ndim(expected) == 0:
            assert (
                row.value == pytest.approx(expected)
                and row.users == len(case.users)
                and np.isnan([row.low, row.high]).all()
            )
        else:
            defined = [x for x in expected if not math.isnan(x)]
            assert (row.value, row.users) == (pytest.approx(mean(defined), abs=1e-12, nan_ok=True), len(defined)), (
                row.metric
            )
            assert not defined or row.low - 1e-12 <= row.value <= row.high + 1e-12


@pytest.mark.parametrize('seed', SEEDS)
@pytest.mark.parametrize('features,distance', [('sets', jaccard), ('vectors', cosine)])
def test_lists_from_a_file_give_the_definitions(seed, features, distance):
    case = Case(seed)
    table, notes = evaluate_lists(**case.tables(features, rng=seed), ks=KS)
    assert table.metric.tolist() == [n.replace('@k', f'@{k}') for n in metrics() for k in (KS if '@k' in n else KS[:1])]
    check_against_definitions(case, table, distance)
    assert any('without a list' in n for n in notes) and any('not in the catalogue' in n for n in notes)


def test_only_what_can_be_computed_is_there():
    tables = Case(0).tables()

    def names(*given, drop=()):
        return set(
            evaluate_lists(tables['lists'], tables['truth'].drop(columns=list(drop)), **{g: tables[g] for g in given})[
                0
            ].metric
        )

    ranks = {'hr@10', 'recall@10', 'precision@10', 'ndcg@10', 'map@10', 'mrr'}
    graded = {'ndcg-graded@10', 'ndcg-burges@10'}
    assert names() == ranks | graded and names(drop=['rating']) == ranks
    assert names('train', drop=['rating']) == ranks | {'coverage@10', 'novelty@10', 'serendipity@10'}
    assert names('catalogue', 'features', drop=['rating']) == ranks | {'coverage@10', 'diversity@10'}


@pytest.mark.parametrize(
    'name', ['hr@10', 'recall@10', 'precision@10', 'ndcg@10', 'ndcg-graded@10', 'ndcg-burges@10', 'map@10', 'mrr']
)
def test_perfect_lists_and_lists_of_strangers(name):
    case = Case(1)
    case.lists = {u: sorted(items, key=lambda i: -items[i]) for u, items in case.truth.items()}
    tables = case.tables()

    def value(lists):
        return evaluate_lists(lists, tables['truth'])[0].set_index('metric').value[name]

    assert value(tables['lists']) == pytest.approx(
        1 if name != 'precision@10' else np.mean([len(t) / 10 for t in case.truth.values()])
    )
    assert value(tables['lists'].assign(item_id='nobody asked ' + tables['lists'].item_id)) == 0


# -- every metric, whoever registered it --


def given_of(users, seed=0, n_items=40):
    "What there is to compute metrics from: lists of the users asked for, targets, and what is known of items."
    everybody = np.random.default_rng(seed)
    lists = np.argsort(everybody.random((20, n_items)), axis=1)[:, :8]
    lists[[3, 7], 5:], lists[11] = -1, -1
    asked = [everybody.permutation(n_items)[: everybody.integers(1, 6)] for _ in range(20)]
    grades = [everybody.integers(1, 6, len(a)).astype(float) for a in asked]
    known = dict(
        popularity=everybody.integers(0, 30, n_items),
        n_training_users=30,
        catalogue=everybody.random(n_items) < 0.8,
        features=everybody.random((n_items, 4)) < 0.4,
    )
    targets, offsets = np.concatenate([asked[u] for u in users]), np.r_[0, np.cumsum([len(asked[u]) for u in users])]
    ranks = ranks_in(lists[users], targets, offsets, np.asarray(users))
    relevance = np.concatenate([grades[u] for u in users])
    return dict(ranks=ranks, lists=lists[users], targets=targets, relevance=relevance) | known


@pytest.mark.parametrize('name', [n.replace('@k', f'@{k}') for n in metrics() for k in (KS if '@k' in n else KS[:1])])
def test_a_metric_is_a_number_of_each_user_or_of_all(name):
    "Of each user alone: neither the order of users nor the other users change it."
    found = by_name(name)[0]
    assert (found.function.__doc__ or '').strip(), 'a table of metrics says what each is'
    whole = given_of(range(20))
    if unknown := set(found.needs) - set(whole):
        pytest.skip(f'needs {", ".join(unknown)}, which no test gives')
    values = per_user_metric(name, **whole)
    order = np.random.default_rng(1).permutation(20)
    moved = per_user_metric(name, **given_of(order))
    if np.ndim(values) == 0:
        assert np.isfinite(values) and moved == pytest.approx(values)
        return
    assert values.shape == (20,) and values.dtype == np.float64 and not np.isinf(values).any()
    assert moved == pytest.approx(values[order], abs=1e-12, nan_ok=True)
    assert per_user_metric(name, **given_of(range(5))) == pytest.approx(values[:5], abs=1e-12, nan_ok=True)
    for need in found.needs:
        with pytest.raises(DataError, match=f'{name} needs {need}'):
            per_user_metric(name, **whole | {need: None})


# -- the oracles --


def oracle(package):
    return pytest.importorskip(
        package,
        reason=f'{package} is not installed: it pins other versions, so it is tried in an environment of its own',
    )


def trec(case):
    "Qrels and a run as trec_eval's heirs know them: users without a list stay, scores fall with the rank."
    qrels = {u: dict(items) for u, items in case.truth.items()}
    run = {u: {i: 1000.0 - r for r, i in enumerate(items)} for u, items in case.lists.items() if items}
    return qrels, run


def ours(case, names, **extra):
    tables = case.tables()
    if extra:
        tables |= extra
    ks = {by_name(n)[1] for n in names} - {None}
    table = evaluate_lists(**tables, ks=tuple(ks))[0].set_index('metric')
    return table.value[list(names)]


@pytest.mark.parametrize('seed', SEEDS)
def test_ranx_agrees(seed):
    ranx, case = oracle('ranx'), Case(seed)
    names = {
        f'{a}@{k}': f'{b}@{k}'
        for k in KS
        for a, b in {
            'hr': 'hit_rate',
            'recall': 'recall',
            'precision': 'precision',
            'map': 'map',
            'ndcg-graded': 'ndcg',
            'ndcg-burges': 'ndcg_burges',
        }.items()
    } | {'mrr': 'mrr'}
    case.lists = {u: items or ['nothing'] for u, items in case.lists.items()}  # ranx wants a list of everybody
    qrels, run = trec(case)
    theirs = ranx.evaluate(ranx.Qrels(qrels), ranx.Run(run), list(names.values()))
    for name, value in ours(case, names).items():
        assert value == pytest.approx(theirs[names[name]], abs=1e-12), name


@pytest.mark.parametrize('seed', SEEDS)
def test_ir_measures_agrees(seed):
    ir, case = oracle('ir_measures'), Case(seed)
    qrels, run = trec(case)
    names = {
        f'{a}@{k}': m @ k
        for k in KS
        for a, m in {'hr': ir.Success, 'recall': ir.R, 'precision': ir.P, 'map': ir.AP, 'ndcg-graded': ir.nDCG}.items()
    }
    names |= {'mrr': ir.RR}
    theirs = ir.calc_aggregate(names.values(), qrels, run)
    for name, value in ours(case, names).items():
        assert value == pytest.approx(theirs[names[name]], abs=1e-12), name


@pytest.mark.parametrize('seed', SEEDS)
@pytest.mark.parametrize('k', KS)
def test_rectools_agrees(seed, k):
    oracle('rectools')
    from rectools.metrics import CatalogCoverage, IntraListDiversity, MeanInvUserFreq, Serendipity
    from rectools.metrics.distances import PairwiseDistanceCalculator

    case = Case(seed)
    case.train = list(dict.fromkeys(case.train))  # it counts interactions in one place and users in the other
    case.lists = {u: [i for i in items if i in case.sets and case.sets[i]] for u, items in case.lists.items()}
    tables = case.tables()
    reco, train = tables['lists'], tables['train']

    class Jaccard(PairwiseDistanceCalculator):
        def _get_distances_for_item_pairs(self, items_0, items_1):
            return np.array([jaccard(case, i, j) for i, j in zip(items_0, items_1)])

    found = ours(case, [f'coverage@{k}', f'novelty@{k}', f'serendipity@{k}', f'diversity@{k}'])
    assert found[f'coverage@{k}'] == pytest.approx(
        CatalogCoverage(k, normalize=True).calc(reco, case.catalogue), abs=1e-12
    )
    assert found[f'novelty@{k}'] == pytest.approx(MeanInvUserFreq(k).calc(reco, train), abs=1e-12)
    users = [u for u in case.users if case.lists[u]]
    per_user = Serendipity(k).calc_per_user(reco, tables['truth'], train, case.catalogue)
    within = [
        min(len(case.lists[u]), k) / k for u in per_user.index
    ]  # its formula divides by k, its code by the items that are there
    assert found[f'serendipity@{k}'] == pytest.approx((per_user * within).sum() / len(case.users), abs=1e-12) and len(
        per_user
    ) == len(users)
    pairs = [u for u in users if len(case.lists[u]) > 1]  # a list of one item is 0 there, and undefined here
    if k > 1:
        assert found[f'diversity@{k}'] == pytest.approx(
            IntraListDiversity(k, Jaccard()).calc_per_user(reco)[pairs].mean(), abs=1e-12
        )
    else:
        assert np.isnan(found[f'diversity@{k}'])


# -- ids --

LISTS = pd.DataFrame(
    dict(user_id=['0007', '0007', '7', '7'], item_id=['1', '01', '1', '1e0'], score=[0.9, 0.1, 0.5, 0.5])
)
TRUTH = pd.DataFrame(dict(user_id=['7', '0007'], item_id=['1e0', '01']))


def values(*args, **kwargs):
    return evaluate_lists(*args, **kwargs)[0].set_index('metric').value


def test_ids_are_what_the_files_say():
    assert values(LISTS, TRUTH)['mrr'] == 0.5 and values(LISTS, TRUTH, ks=(1,))['hr@1'] == 0
    only = TRUTH[TRUTH.user_id == '0007']
    assert values(LISTS, only)['mrr'] == 0.5 and values(LISTS, only.assign(item_id='1'))['mrr'] == 1


def test_numbers_in_one_file_and_text_in_the_other_are_compared_as_written():
    truth = pd.DataFrame(dict(user_id=[7], item_id=[1]))  # 0007 is not this user, 01 and 1e0 not this item
    table, notes = evaluate_lists(LISTS, truth)
    assert table.set_index('metric').value['mrr'] == 1 and any('not in the truth, left out: 1' in n for n in notes)
    numbers = pd.DataFrame(dict(user_id=[7, 7], item_id=[1, 2]))
    assert values(numbers, truth.astype(str))['mrr'] == values(numbers, truth)['mrr'] == 1
    with pytest.raises(DataError, match="no user of the truth has a list; lists are of '7', the truth of '007'"):
        evaluate_lists(numbers, pd.DataFrame(dict(user_id=['007'], item_id=['1'])))


@pytest.mark.parametrize('table', ['lists', 'truth'])
@pytest.mark.parametrize('what', ['user_id', 'item_id'])
@pytest.mark.parametrize('odd', [[1.5, 2], [1, None], ['a', None], [True, False]])
def test_what_is_no_id_is_refused_where_it_stands(table, what, odd):
    tables = dict(lists=LISTS[1:3], truth=TRUTH)
    with pytest.raises(DataError, match=f'^{table}, {what}: '):
        evaluate_lists(**tables | {table: tables[table].assign(**{what: odd})})


def test_words_that_look_missing_are_ids():
    words = ['NA', 'None', 'null', 'nan']
    lists = pd.DataFrame(dict(user_id=words, item_id=words))
    assert values(lists, lists)['mrr'] == 1


# -- order, repetitions, who is judged --


def test_scores_sort_and_ties_stay_as_the_file_has_them():
    lists = pd.DataFrame(dict(user_id=1, item_id=[10, 11, 12, 13], score=[0.5, 0.9, 0.5, 0.9]))

    def place(item):
        return 1 / values(lists, pd.DataFrame(dict(user_id=[1], item_id=[item])))['mrr']

    assert [place(i) for i in (11, 13, 10, 12)] == [1, 2, 3, 4]
    lists['rank'] = [4, 3, 2, 1]  # a rank goes before a score
    assert [place(i) for i in (13, 12, 11, 10)] == [1, 2, 3, 4]
    lists = lists[['user_id', 'item_id']]  # neither: the order of the rows
    assert [place(i) for i in (10, 11, 12, 13)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    'change,message',
    [
        (dict(rank=[1, 2, 2]), "ranks of user '7' are 2; a list counts"),
        (dict(rank=[1, 3, 1]), "user '0007' are 1, 3"),
        (dict(rank=[0, 1, 0]), "user '0007' are 0, 1"),
        (dict(rank=[1, 1, 1]), "user '0007' are 1, 1"),
        (dict(rank=[1, 1.5, 1]), 'lists, rank: got 1.5 at position 1'),
        (dict(rank=['1', '2', '1']), 'lists, rank: got'),
        (dict(score=[1, np.nan, 2]), 'lists, score: got nan'),
        (dict(score=[1, np.inf, 2]), 'lists, score: got inf'),
        (dict(score=['high', 'low', 'low']), 'lists, score: got (str|object), wanted numbers'),
        (dict(item_id=['a', 'a', 'a']), "lists: user '0007' has item 'a' twice"),
    ],
)
def test_lists_that_are_none_are_refused(change, message):
    lists = LISTS[:3].drop(columns='score').assign(**change)
    with pytest.raises(DataError, match=message):
        evaluate_lists(lists, TRUTH)


def test_a_target_that_comes_twice_counts_once():
    twice = pd.concat([TRUTH, TRUTH[:1], TRUTH[:1]])
    table, notes = evaluate_lists(LISTS, twice)
    assert (
        table.equals(evaluate_lists(LISTS, TRUTH)[0])
        and notes[0] == 'rows of the truth that repeat another, counted once: 2'
    )
    with pytest.raises(DataError, match="truth: user '7' rates item '1e0' twice, differently"):
        evaluate_lists(LISTS, pd.concat([TRUTH.assign(rating=5), TRUTH[:1].assign(rating=4)]))


def test_users_without_a_list_are_misses_and_users_without_truth_are_left_out():
    truth = pd.concat([TRUTH, pd.DataFrame(dict(user_id=['nobody', 'else'], item_id=['1', '1']))])
    lists = pd.concat([LISTS, pd.DataFrame(dict(user_id=['stranger'] * 2, item_id=['1', '2'], score=[1, 0]))])
    table, notes = evaluate_lists(lists, truth, train=LISTS)
    table = table.set_index('metric')
    assert table.value['mrr'] == 0.25 and table.users['mrr'] == 4 and table.users['novelty@10'] == 2
    assert 'users of the truth without a list, every target missed: 2 of 4' in notes
    assert 'users of the lists who are not in the truth, left out: 1' in notes


def test_relevance_of_zero_is_no_target():
    truth = TRUTH.assign(rating=[0, 3])
    table, notes = evaluate_lists(LISTS, truth)
    assert (
        table.users.unique().tolist() == [1] and 'users of the truth with no item rated above 0, left out: 1' in notes
    )
    for bad, message in (
        (-1, 'got -1.0, wanted 0 or more'),
        (np.nan, 'got nan'),
        (np.inf, 'got inf'),
        ('good', 'wanted numbers'),
        (0, 'no item is rated above 0'),
    ):
        with pytest.raises(DataError, match=message):
            evaluate_lists(LISTS, TRUTH.assign(rating=bad))


def test_empty_tables_and_missing_columns_are_sentences():
    with pytest.raises(DataError, match='lists are of nobody'):
        evaluate_lists(LISTS[:0], TRUTH)
    with pytest.raises(DataError, match='nothing to evaluate'):
        evaluate_lists(LISTS, TRUTH[:0])
    with pytest.raises(DataError, match='train: no column item_id; there are user_id'):
        evaluate_lists(LISTS, TRUTH, train=TRUTH[['user_id']])
    with pytest.raises(DataError, match='features: got no column'):
        evaluate_lists(LISTS, TRUTH, features=TRUTH[['item_id']])
    with pytest.raises(DataError, match='features: an item has two lines'):
        evaluate_lists(LISTS, TRUTH, features=pd.DataFrame(dict(item_id=['1', '1'], genres='a')))
    for k in (0, -1, 1.5):
        with pytest.raises(DataError, match='k must be'):
            evaluate_lists(LISTS, TRUTH, ks=(k,))


def test_short_lists_divide_by_k_and_say_so():
    table, notes = evaluate_lists(LISTS, TRUTH, ks=(2, 50))
    value = table.set_index('metric').value
    assert value['precision@50'] == 1 / 50 and value['recall@50'] == value['recall@2'] == 1
    assert 'no list is longer than 2: at 50 the missing places count as wrong' in notes


# -- single metrics --


def test_a_play_count_does_not_overflow():
    ranks = Ranks([0], [0, 3], [1, 2, 3])
    for scale in (1, 1e3, 1e6):
        assert burges_ndcg_at_k(ranks, np.array([3.0, 2.0, 1.0]) * scale, 3) == pytest.approx([1])
        assert burges_ndcg_at_k(Ranks([0], [0, 2], [2, 1]), np.array([2.0, 1.0]) * scale, 1)[0] <= 1 / 3


def test_coverage_stays_within_one_and_has_no_interval():
    lists = np.array([[0, 1, 2, 3], [4, 5, -1, -1]])
    assert coverage_at_k(lists, np.array([True] * 2 + [False] * 4), 4) == 1
    row = evaluate_lists(LISTS, TRUTH, train=LISTS)[0].set_index('metric').loc['coverage@10']
    assert row.value == 1 and np.isnan([row.low, row.high]).all()


def test_diversity_is_the_same_in_any_blocks():
    rng = np.random.default_rng(0)
    lists, features = np.argsort(rng.random((50, 30)), axis=1)[:, :8], rng.random((30, 5)) < 0.4
    whole = diversity_at_k(lists, features, 8)
    one_by_one = np.concatenate([diversity_at_k(lists[i : i + 1], features, 8) for i in range(50)])
    assert whole == pytest.approx(one_by_one, rel=1e-12) and len(diversity_at_k(lists[:0], features, 8)) == 0
    with pytest.raises(DataError, match='features must be finite'):
        diversity_at_k(lists, np.full((30, 2), np.nan), 8)


def test_a_file_of_lists_is_not_taken_for_ranks_of_targets():
    with pytest.raises(DataError, match='these are lists, not ranks of targets'):
        evaluate_ranks(Ranks([1, 2], [0, 3, 5], [1, 2, 3, 2, 1]))
    with pytest.raises(DataError, match='ranks of targets are evaluated without truth'):
        evaluate_lists(
            pd.DataFrame(dict(user_id=[1, 1], item_id=[1, 2], rank=[12, 3])),
            pd.DataFrame(dict(user_id=[1], item_id=[1])),
        )
    assert evaluate_ranks(Ranks.single([1, 2], [1, 1]))[1] == [
        'every rank is 1: if these are lists, not ranks of targets, give the truth'
    ]


def test_ranks_of_a_record_are_evaluated_by_the_same_names():
    ranks = Ranks(['a', 'b'], [0, 3, 5], [12, 3, 40, 1, 2])
    table, notes = evaluate_ranks(ranks, ks=(2, 12))
    assert notes == [] and table.metric.tolist() == [
        'hr@2',
        'hr@12',
        'recall@2',
        'recall@12',
        'precision@2',
        'precision@12',
        'ndcg@2',
        'ndcg@12',
        'map@2',
        'map@12',
        'mrr',
    ]
    for row in table.itertuples():
        assert (
            row.value == per_user_metric(row.metric, ranks=ranks).mean()
            and row.low <= row.value <= row.high
            and row.users == 2
        )
    with pytest.raises(DataError, match='no users'):
        evaluate_ranks(Ranks([], [0], []))
