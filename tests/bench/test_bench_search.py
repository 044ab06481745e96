"The search bench end to end at toy size: files, columns, and verdicts that claim no more than was measured."

import sys

import pandas as pd
import pytest
import torch

from molrec.base.errors import ConfigError
from molrec.bench import growth, peers, stage1_grid
from molrec.bench import searches as bench_searches
from molrec.bench import stage1 as bench_stage1

fast = ('faiss-flat', 'faiss-ivf', 'faiss-refine', 'torch-bf16', 'stage1-int8')
elsewhere = "not at the bar's size"


@pytest.fixture(scope='module')
def stage1(tmp_path_factory):
    out = tmp_path_factory.mktemp('stage1')
    return out, bench_stage1.stage1(out, True, items=3_000, width=16, n_queries=4, rounds=1, methods=fast)


@pytest.fixture(scope='module')
def taught():
    corpus = bench_searches.Mixture(rows=2**13)
    return bench_searches.teach(corpus, steps=3), corpus


@pytest.fixture(scope='module')
def searches(tmp_path_factory, taught):
    out = tmp_path_factory.mktemp('search')
    return out, growth.search(
        out,
        True,
        items=3_000,
        sizes=(2_000, 4_000),
        n_queries=4,
        n_candidates=50,
        rounds=1,
        model=taught[0],
        corpus=taught[1],
    )


def files(out, name):
    return sorted(f.suffix for f in out.glob(f'{name}.*'))


def test_stage1_writes_a_table_a_figure_and_markdown(stage1):
    out, table = stage1
    assert files(out, 'stage1') == ['.csv', '.md', '.png', '.svg']
    assert list(pd.read_csv(out / 'stage1.csv').columns) == list(table.columns)


def test_stage1_says_what_was_measured_where(stage1):
    _, table = stage1
    assert {
        'method',
        'p20',
        'p50',
        'p80',
        'ratio',
        'overlap',
        'kept',
        'setting',
        'build_s',
        'bytes_per_item',
        'k_prime',
        'items',
        'width',
        'queries',
        'threads',
        'cpu',
        'torch',
        'quick',
    } <= set(table)
    assert set(table.k_prime) == {30, 300} and set(table.method) == {*fast, 'bound'}


def test_every_stage1_method_has_its_overlap(stage1):
    measured = stage1[1][stage1[1].method != 'bound']
    assert measured.overlap.between(0.5, 1).all() and (measured[measured.method == 'faiss-flat'].overlap == 1).all()
    assert (
        measured[measured.method.str.startswith('stage1')].kept
        >= measured[measured.method.str.startswith('stage1')].k_prime
    ).all()


def test_another_size_is_never_just_met(stage1):
    out, table = stage1
    assert (
        bench_stage1.stage1_bars(table).verdict.str.endswith(elsewhere).all()
        and elsewhere in (out / 'stage1.md').read_text()
    )


def test_bars_follow_the_numbers(stage1):
    "The same table at the bar's size, ours once fast and once slow."
    table = stage1[1].assign(**bench_stage1.bar_size, k_prime=lambda t: t.k_prime.map({30: 10_000, 300: 100_000}))
    ours = table.method == 'stage1-int8'
    for p50, ratio, word in ((1e-6, 1e6, 'met'), (1e6, 1e-6, 'missed')):
        bars = bench_stage1.stage1_bars(
            table.assign(p50=table.p50.mask(ours, p50), ratio=table.ratio.mask(ours, ratio), overlap=1.0)
        )
        speed = bars[~bars['asked for'].str.startswith('overlap')]
        assert set(speed.verdict) == {word} and len(speed) == 6


def test_a_low_overlap_misses_its_bar(stage1):
    table = stage1[1].assign(overlap=lambda t: t.overlap.mask(t.method == 'stage1-int8', 0.97))
    bars = bench_stage1.stage1_bars(table)
    assert bars[bars['asked for'].str.startswith('overlap')].verdict.str.startswith('missed').all()


def test_a_missing_library_is_named_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, 'faiss', None)
    with pytest.raises(ConfigError, match=r"pip install 'molrec\[bench\]'"):
        peers.build('faiss-flat', peers.clustered(100, 16))


@pytest.mark.parametrize(
    'found, truth, share',
    [
        ([[1, 2, 3]], [[1, 2, 3]], 1),
        ([[3, 1, -1]], [[1, 2]], 0.5),
        ([[-1, -1]], [[0, 1]], 0),
        ([[5, 5, 5]], [[5, 6]], 0.5),
        ([[0], [9]], [[0], [8]], 0.5),
    ],
)
def test_overlap(found, truth, share):
    assert peers.overlap(torch.tensor(found), torch.tensor(truth)) == share


def test_search_writes_a_table_a_figure_and_markdown(searches):
    out, table = searches
    assert files(out, 'search') == ['.csv', '.md', '.png', '.svg']
    assert set(table.part) == {'scoring', 'search', 'growth', 'memory'} and set(table.method) == {
        'mol',
        *bench_searches.families,
    }


def test_scores_agree_before_they_are_timed(searches):
    scoring = searches[1][searches[1].part == 'scoring'].set_index('what')
    for form, (*_, tolerance) in bench_searches.scoring_forms.items():
        if form in scoring.index:
            assert scoring.score_gap[form] < tolerance


def test_recall_is_that_of_brute_force_alone(searches):
    found = searches[1][searches[1].part == 'search']
    assert (found[found.method == 'brute-force'].recall == 1).all() and found.recall.between(0, 1).all()


def test_search_verdicts_know_their_size(searches):
    bars = growth.search_bars(searches[1])
    growing = bars[bars[''] != 'scoring']
    assert growing.verdict.str.endswith(elsewhere).all() and set(growing['']) == {'search', 'growth', 'memory'}


def test_many_items_are_written_down(tmp_path, taught):
    measured = growth.hundred_million(
        tmp_path,
        n=9_000,
        k_primes=(500, 9_000),
        batches=(1, 3),
        k=10,
        rounds=1,
        n_truth=2,
        model=taught[0],
        corpus=taught[1],
        block=2_000,
    )
    assert (
        files(tmp_path, 'hundred-million') == ['.json', '.md']
        and elsewhere in (tmp_path / 'hundred-million.md').read_text()
    )
    assert [r['recall'] for r in measured['searches'] if r['setting'] == "k' 9,000"] == [1, 1]


def test_the_grid_goes_on_where_it_ended(tmp_path):
    pieces = [('gaussian', 3_000, 16), ('clustered', 3_000, 16)]
    first = stage1_grid.stage1_grid(tmp_path, True, budget_s=1e-9, pieces=pieces)
    assert not len(first)
    one = stage1_grid.stage1_grid(tmp_path, True, pieces=pieces[:1])
    both = stage1_grid.stage1_grid(tmp_path, True, pieces=pieces)
    assert (
        len(both) == 2 * len(one)
        and set(both.corpus) == {'gaussian', 'clustered'}
        and both.exact_ms[: len(one)].tolist() == pytest.approx(one.exact_ms.tolist(), rel=1e-4)
    )
    assert files(tmp_path, 'stage1-grid-quick') == ['.csv', '.md', '.png', '.svg'] and both.exact_overlap.min() > 0.9
    assert len(stage1_grid.stage1_grid(tmp_path, True, pieces=pieces)) == len(both)


def test_a_missed_goal_of_the_grid_is_not_met():
    def cell(B, exact):
        return dict(
            corpus='gaussian',
            items=10**6,
            width=64,
            queries=B,
            k_prime=100,
            read_ms=3.0,
            exact_ms=exact,
            sampled_ms=9.0,
            flat_ms=50.0,
            ivf_ms=1.0,
            ivf_overlap=0.9,
            arithmetic_ms=0.4 * B,
        )

    bars = stage1_grid.grid_bars(pd.DataFrame([cell(32, 40.0), cell(64, 90.0)])).set_index('asked for')
    assert (
        bars.met['64 queries: five times Flat'] == 0
        and bars.met['two calls of half the queries are not cheaper than one'] == 0
    )
    assert 'never slower than IVF at overlap .98' not in bars.index and bars.met['never slower than Flat'] == 1


def test_one_query_stands_beside_the_sum_of_its_bounds(tmp_path, taught):
    table = bench_searches.one_query(
        tmp_path, True, items=9_000, n_queries=3, k_prime=200, rounds=2, model=taught[0], corpus=taught[1]
    )
    assert files(tmp_path, 'one-query') == ['.csv', '.md', '.png', '.svg'] and table.n.tolist() == [2, 2, 2, 6]
    whole = table.set_index('what').loc['whole search']
    assert whole.bound == pytest.approx(table[table.method == 'bound'].p50.sum()) and whole.p99 >= whole.p50
    assert (
        bench_searches.one_query_bars(table).verdict.str.endswith(elsewhere).all()
        and elsewhere in (tmp_path / 'one-query.md').read_text()
    )
