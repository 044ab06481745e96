"One conformance test for all indexes, on small corpora and models made to be difficult; then filters, files and faults."

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from molrec.base.errors import ConfigError, DataError
from molrec.data.sequences import Sequences
from molrec.search import index as indexes
from molrec.search.asking import snapshot
from molrec.search.component_mean import Combined, ComponentMean
from molrec.search.exact import Exact
from molrec.search.h_indexer import HIndexer
from molrec.search.index import BruteForce, Index, relative_recall
from molrec.search.index_costs import plan
from molrec.search.item_table import ItemTable, item_storages
from molrec.search.mol_loops import mol_library
from molrec.search.per_component import PerComponent
from molrec.settings.parts import parts
from molrec.similarities.dot import Dot, Head
from molrec.similarities.fm import FM
from molrec.similarities.mlp import MLP
from molrec.similarities.mol import MoL
from molrec.similarities.neuralfm import NeuralFM
from molrec.training.losses import draw_negatives, sampled_loss

D = 6
kinds = [p.load() for p in parts['index'].values()]  # every kind that is declared
every = pytest.mark.parametrize('kind', kinds, ids=lambda kind: kind.__name__)


def mol(shape=(3, 2, 4), seed=0, gates='query+item+pair', temperature=0.05):
    torch.manual_seed(seed)
    return (
        MoL(D, *shape, query_hidden=8, gate_hidden=8, gates=gates, temperature=temperature).eval().requires_grad_(False)
    )


compiled = mol_library(mol(), ItemTable.build(mol(), torch.zeros(1, D)), 'fp32') is not None
native = pytest.mark.skipif(
    not compiled, reason='the compiled loop needs a C compiler and a processor with AVX2, AVX512 or 64-bit ARM'
)
impls = pytest.mark.parametrize('impl', ['torch', pytest.param('native', marks=native)])


def spiteful(similarity):
    "A gate of huge weights that picks the smallest logit of each pair, as far as its hidden layer reaches."
    similarity = snapshot(similarity)
    up, _, down = similarity.gate_pair
    for t in (up.weight, up.bias, down.weight, down.bias):
        t.zero_()
    n = min(up.weight.shape)
    up.weight[:n, :n], down.weight[:n, :n] = -torch.eye(n), 1e4 * torch.eye(n)
    return similarity


def overbearing(similarity):
    "A gate of huge random weights: one logit takes all, whichever it is."
    similarity = snapshot(similarity)
    for p in similarity.gate_query.parameters():
        p.mul_(1e6)
    return similarity


models = dict(
    plain=mol,
    single=lambda: mol((1, 1, 4)),
    query_and_item=lambda: mol(gates='query+item', seed=1),
    spiteful=lambda: spiteful(mol()),
    overbearing=lambda: overbearing(mol()),
)
tables = {name: make() for name, make in models.items()}


def corpus(rng, n, look):
    "Items: all different, all equal, each about three times, or of very different lengths."
    x = rng.normal(size=(n, D))
    if look == 'equal':
        x = np.repeat(x[:1], n, 0)
    if look == 'repeated':
        x = x[rng.integers(max(1, n // 3), size=n)]
    if look == 'lengths':
        x *= 10.0 ** rng.integers(-6, 4, (n, 1))
    return torch.from_numpy(x.astype(np.float32)).reshape(n, D)


class Case(dict):
    def __repr__(self):
        return f"{self['model']}, {len(self['items'])} items, {self['look']}, {len(self['queries'])} queries, k {self['k']}, k_each {self['k_each']}, k' {self['k_prime']}, {'excludes' if self['exclude'] else 'all'}, allow {self['allow'] is not None and len(self['allow'])}"

    def __or__(self, other):
        return Case(dict(self) | other)


@st.composite
def cases(draw):
    "A corpus with ids in any order, queries, exclusions, a filter, and the sizes."
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    n, B = draw(st.one_of(st.integers(0, 5), st.integers(0, 300))), draw(st.integers(0, 5))
    look = draw(st.sampled_from(['random', 'equal', 'repeated', 'lengths']))
    items = corpus(rng, n, look)
    ids = rng.choice(1000, n, replace=False)
    exclude = None if draw(st.booleans()) else [rng.choice(1000, rng.integers(0, 200), replace=False) for _ in range(B)]
    allow = None if draw(st.booleans()) else rng.choice(1000, draw(st.sampled_from([0, 10, 500])), replace=False)
    sizes = dict(k=draw(st.integers(1, 40)), k_each=draw(st.integers(1, 30)), k_prime=draw(st.integers(1, 120)))
    return Case(
        look=look,
        model=draw(st.sampled_from(list(tables))),
        items=items,
        ids=ids,
        queries=torch.from_numpy(rng.normal(size=(B, D))).float(),
        exclude=exclude,
        allow=allow,
        rng=rng,
        **sizes,
    )


def has(kind, setting):
    return hasattr(kind.Settings(), setting)


def make(kind, case, items=None, ids=None, **more):
    chosen = {name: case[name] for name in ('k_each', 'k_prime') if has(kind, name)} | more
    return kind.build(
        tables[case['model']], case['items'] if items is None else items, case['ids'] if ids is None else ids, **chosen
    )


def ask(index, case, k=None):
    return index.search(case['queries'], k or case['k'], case['exclude'], case['allow'])


def permitted(case):
    "Ids that each query may be given."
    allowed = (
        set(case['ids'].tolist()) if case['allow'] is None else set(case['ids'].tolist()) & set(case['allow'].tolist())
    )
    return [allowed - set(case['exclude'][b].tolist() if case['exclude'] else ()) for b in range(len(case['queries']))]


def same(a, b):
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


@impls
@every
@settings(max_examples=25, deadline=None)
@given(case=cases())
def test_conformance(kind, impl, case):
    "Exactly k columns, sorted, no id twice, full where it can be, nothing forbidden, each score the pair's own, and the same answer again."
    index, k = make(kind, case, impl=impl), case['k']
    scores, ids = ask(index, case)
    assert (
        scores.shape == ids.shape == (len(case['queries']), k)
        and scores.dtype == torch.float32
        and ids.dtype == torch.int64
    )
    assert ((ids == -1) == (scores == -torch.inf)).all() and not scores.isnan().any()
    truth = make(BruteForce, case, impl=impl)
    all_scores, all_ids = truth.search(case['queries'], max(1, len(truth)))
    for b, may in enumerate(permitted(case)):
        mine = [(-s, i) for s, i in zip(scores[b].tolist(), ids[b].tolist()) if i >= 0]
        assert mine == sorted(mine)  # best first, ties by lower id
        got = [i for _, i in mine]
        assert len(set(got)) == len(got) == min(k, len(may)) and set(got) <= may and (ids[b, len(got) :] == -1).all()
        own = dict(zip(all_ids[b].tolist(), all_scores[b].tolist()))
        assert [own[i] for i in got] == [-s for s, _ in mine]  # wherever a pair is scored, it scores the same
    assert same(ask(index, case), (scores, ids))


@impls
@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_exact_equals_brute_force(impl, case):
    assert same(ask(make(Exact, case, impl=impl), case), ask(make(BruteForce, case, impl=impl), case))


@every
@settings(max_examples=12, deadline=None)
@given(case=cases())
def test_save_load_search_is_identical(kind, case, tmp_path_factory):
    index, path = make(kind, case), tmp_path_factory.mktemp('index') / 'it'
    index.save(path)
    again = Index.load(path, tables[case['model']])
    assert (
        type(again) is kind and same(ask(again, case), ask(index, case)) and len(load_file(path)['ids']) == len(index)
    )


@every
@settings(max_examples=15, deadline=None)
@given(case=cases())
def test_add_remove_update_equal_a_rebuild(kind, case, tmp_path_factory):
    "A third of the items is added later, some are removed, some changed: in memory and after a mapped load."
    rng, n, items, ids = case['rng'], len(case['ids']), case['items'].clone(), case['ids']
    index = make(kind, case, items[: 2 * n // 3], ids[: 2 * n // 3])
    if rng.integers(2):
        path = tmp_path_factory.mktemp('index') / 'it'
        index.save(path)
        bytes_before, index = path.read_bytes(), Index.load(path, tables[case['model']])
    for part in np.array_split(np.arange(2 * n // 3, n), 3):
        index.add(ids[part], items[part])
    changed = rng.choice(n, n // 4, replace=False)
    items[changed] = torch.from_numpy(rng.normal(size=(len(changed), D))).float()
    index.update(ids[changed], items[changed])
    gone = rng.random(n) < rng.choice([0.1, 0.9])
    index.remove(ids[gone])
    order = np.flatnonzero(~gone)
    if kind is HIndexer:
        order = (
            order[np.argsort([index.ids.tolist().index(i) for i in ids[order]])] if len(order) else order
        )  # stage 1 cuts equal scores by row
    assert sorted(index.ids.tolist()) == sorted(ids[order].tolist())
    assert same(ask(index, case), ask(make(kind, case, items[torch.from_numpy(order)], ids[order]), case))
    if 'bytes_before' in locals():
        assert path.read_bytes() == bytes_before


# Candidates of these are nested: what a smaller k' keeps, a larger one keeps too. So each place of the list can only get better,
# and with it recall. A sampled threshold nests too while every row is in the sample (up to 4,096).
@pytest.mark.parametrize(
    'kind, name',
    [(ComponentMean, 'k_prime'), (HIndexer, 'k_prime'), (PerComponent, 'k_each'), (Combined, 'k_prime')],
    ids=lambda x: getattr(x, '__name__', x),
)
@settings(max_examples=20, deadline=None)
@given(case=cases())
def test_more_candidates_never_make_a_list_worse(kind, name, case):
    k, before = case['k'], None
    truth = ask(make(BruteForce, case), case)[0]
    for more in (k, k + 7, 2 * k + 20, 400):
        scores = ask(
            make(kind, case | {name: more, 'k_each': more if name == 'k_each' else k}, arithmetic='fp32'), case
        )[0]
        if before is not None:
            assert (scores >= before).all() and relative_recall(scores, truth) >= relative_recall(before, truth)
        before = scores
    assert torch.equal(scores, truth) or kind is PerComponent and more < len(case['ids'])  # 400 is everything


@native
@every
@settings(max_examples=12, deadline=None)
@given(case=cases())
def test_torch_and_compiled_agree(kind, case):
    if case['model'] == 'overbearing':
        case = case | {'model': 'plain'}  # a gate of 1e6 turns the last digit of a logit into another choice
    a, b = (ask(make(kind, case, impl=impl, arithmetic='fp32'), case)[0] for impl in ('torch', 'native'))
    if kind in (BruteForce, Exact):
        assert torch.allclose(a, b, atol=2e-3 if case['model'] == 'spiteful' else 2e-4)
    assert torch.equal(a == -torch.inf, b == -torch.inf)


# -- a trained model --


@pytest.fixture(scope='module')
def trained():
    "A small world of genres, and a MoL with a head trained on it for a second."
    torch.manual_seed(0)
    n, dim = 6000, 16
    centre = torch.nn.functional.normalize(torch.randn(30, dim), dim=1) * 4
    genre, taste = torch.randint(30, (n,)), torch.rand(1000, 30).topk(2).indices
    items, queries = centre[genre] + torch.randn(n, dim) / 2, centre[taste[:, 0]] + centre[taste[:, 1]].roll(1, 1)
    model = torch.nn.Module()
    model.similarity, model.head = (
        MoL(dim, 2, 2, 16, query_hidden=32, gate_hidden=16, temperature=0.1),
        Head(dim, 16, temperature=0.1),
    )
    liked = torch.stack([(genre == g).nonzero().squeeze(1)[:100] for g in range(30)])
    optimiser = torch.optim.AdamW(model.parameters(), 0.02)
    for _ in range(60):
        who = torch.randint(1000, (128,))
        given = (
            queries[who],
            items,
            liked[taste[who, torch.randint(2, (128,))], torch.randint(100, (128,))],
            draw_negatives(128, n, 64, 128),
            128,
        )
        optimiser.zero_grad()
        (sampled_loss(model.similarity, *given) + sampled_loss(model.head, *given)).backward()
        optimiser.step()
    return model.eval().requires_grad_(False), items, queries[:100]


@impls
@pytest.mark.parametrize('storage', item_storages)
def test_exact_equals_brute_force_on_a_trained_model(trained, impl, storage):
    model, items, queries = trained
    for k in (1, 10, 100):
        exact, brute = (kind.build(model, items, storage=storage, impl=impl) for kind in (Exact, BruteForce))
        assert same(exact.search(queries[:16], k), brute.search(queries[:16], k))
        costs = exact.answer(queries[:16], k).costs
        assert (costs['second'] >= k).all() and costs['first'].shape == (16,)


@pytest.mark.parametrize(
    'storage, within', [('fp32', 2e-5), ('bf16', 0.1), ('int8', 0.5), ('compact-bf16', 0.2), ('compact-int8', 0.6)]
)
def test_brute_force_is_the_model_up_to_storage(trained, storage, within):
    model, items, queries = trained
    scores, ids = BruteForce.build(model, items, storage=storage).search(queries, 20)
    assert (scores - model.similarity(queries, items).gather(1, ids)).abs().max() < within


@every
def test_recall_on_a_trained_model(trained, kind):
    "Half of the corpus as candidates holds nearly all of the true best; the mean of the smallest is over queries, as sampling promises it."
    model, items, queries = trained
    truth = BruteForce.build(model, items).search(queries, 50)[0]
    sizes = {'k_each': (10, 400), 'k_prime': (60, 3000)}
    few, many = (
        relative_recall(
            kind.build(model, items, **{name: s[i] for name, s in sizes.items() if has(kind, name)}).search(
                queries, 50
            )[0],
            truth,
        )
        for i in (0, 1)
    )
    assert few <= many and many > (0.7 if kind is PerComponent else 0.98)


def test_bf16_picks_and_fp32_decides(trained):
    model, items, queries = trained
    index, brute = HIndexer.build(model, items, k_prime=6000, arithmetic='bf16'), BruteForce.build(model, items)
    (scores, ids), truth = index.search(queries[:9], 50), brute.search(queries[:9], 6000)
    for b in range(9):
        own = dict(zip(truth[1][b].tolist(), truth[0][b].tolist()))
        assert [own[i] for i in ids[b].tolist()] == scores[b].tolist()
    assert relative_recall(scores, truth[0][:, :50]) > 0.999


@pytest.mark.parametrize('stage1', ['fp32', 'bf16', 'int8', 'fp8'])
@pytest.mark.parametrize('head', ['trained', 'mean'])
def test_every_storage_of_stage_1(trained, stage1, head, tmp_path):
    model, items, queries = trained
    truth = BruteForce.build(model, items).search(queries, 20)[0]
    index = HIndexer.build(model, items, k_prime=1500, stage1=stage1, head=None if head == 'trained' else 'mean')
    found = index.answer(queries, 20)
    assert relative_recall(found.scores, truth) > 0.9 and (found.scored >= 1500).all()
    assert (
        relative_recall(ComponentMean.build(model, items, k_prime=3000, stage1=stage1).search(queries, 20)[0], truth)
        > 0.9
    )
    index.save(tmp_path / 'it')
    again = Index.load(tmp_path / 'it', model)
    again.remove([3])
    again.add([3], items[3:4])
    assert again.state.vectors.storage == stage1 and torch.equal(
        again.search(queries, 20)[0], index.search(queries, 20)[0]
    )


# -- filters --


def filtered(kind, trained, **more):
    model, items, queries = trained
    return kind.build(
        model, items, **{name: value for name, value in dict(k_prime=80, k_each=20, **more).items() if has(kind, name)}
    )


@every
def test_one_item_in_a_hundred(trained, kind):
    model, items, queries = trained
    index, allow = filtered(kind, trained), torch.arange(7, 6000, 100)
    scores, ids = index.search(queries, 50, allow=allow)
    assert torch.isin(ids, allow).all()
    mask = torch.zeros(6000, dtype=torch.bool)
    mask[allow] = True
    assert same(index.search(queries, 50, allow=mask), (scores, ids))
    if kind is not PerComponent:
        assert same(
            BruteForce.build(model, items).search(queries, 50, allow=allow), (scores, ids)
        )  # k' is more than there are
    few = index.search(queries, 50, allow=allow[:3])[1]
    assert ((few >= 0).sum(1) == 3).all()


@every
def test_excluding_more_than_k_prime(trained, kind):
    "The 300 best of everyone are forbidden; k' is 80."
    model, items, queries = trained
    truth = BruteForce.build(model, items).search(queries, 350)
    index = filtered(kind, trained)
    scores, ids = index.search(queries, 50, exclude=list(truth[1][:, :300]))
    assert (ids >= 0).all() and not any(torch.isin(a, b).any() for a, b in zip(ids, truth[1][:, :300]))
    if kind in (BruteForce, Exact):
        assert torch.equal(ids, truth[1][:, 300:])
    if kind is HIndexer:
        assert relative_recall(scores, truth[0][:, 300:]) > 0.3
    flat = Sequences(np.arange(100), np.arange(101) * 300, truth[1][:, :300].flatten().numpy())
    assert same(index.search(queries, 50, exclude=flat), (scores, ids))


def test_queries_are_searched_in_blocks_with_their_own_users_and_exclusions():
    "More than one block of 64; user rows and exclusions follow their query."
    torch.manual_seed(0)
    model = MoL(D, 3, 2, 4, n_uid=1, uid_rows=200, query_hidden=8, gate_hidden=8).eval()
    items, queries, users = torch.randn(200, D), torch.randn(150, D), torch.randperm(200)[:150]
    index = BruteForce.build(model, items, storage='fp32')
    truth = model(queries, items, users)
    exclude = [truth[b].topk(b % 7).indices for b in range(150)]
    for b, seen in enumerate(exclude):
        truth[b, seen] = -torch.inf
    scores, ids = index.search(queries, 5, exclude, users=users)
    assert torch.allclose(scores, truth.topk(5).values, atol=1e-4) and torch.allclose(
        truth.gather(1, ids), scores, atol=1e-4
    )
    assert not torch.allclose(index.search(queries, 5, exclude)[0], scores, atol=1e-2)


# -- sizes --


def test_brute_force_never_holds_more_scores_than_it_may(trained, monkeypatch):
    model, items, queries = trained
    sizes = []

    def spy(*args, plain=indexes.score_range):
        sizes.append((out := plain(*args)).numel())
        return out

    monkeypatch.setattr(indexes, 'score_range', spy)
    BruteForce.build(model, items, max_scores=10_000).search(queries, 3)
    assert max(sizes) <= 10_000 and sum(sizes) == 600_000


@pytest.mark.parametrize('storage', item_storages)
@every
def test_plan_is_what_an_index_holds(trained, kind, storage):
    model, items, _ = trained
    index = kind.build(model, items, storage=storage)
    stage1 = getattr(index.settings, 'stage1', None)
    assert sum(plan(6000, model.similarity, storage, stage1, 16, sampled=kind is HIndexer).values()) == pytest.approx(
        index.bytes_per_item, rel=1e-9
    )


def test_room_is_left_and_given_back(trained):
    model, items, _ = trained
    index = BruteForce.build(model, items)
    before = index.state.items.buffer
    for i in range(10):
        index.add([7000 + i], items[:1])
    assert index.state.items.buffer is before and before.room >= 48_000  # of addresses; nothing was copied
    index.remove(range(5500))
    assert index.state.items.buffer is not before and index.state.items.n == len(index) == 510


def test_an_index_is_a_snapshot(trained):
    model, items, queries = trained
    similarity = snapshot(model.similarity).train()
    index = BruteForce.build(similarity, items)
    before = index.search(queries, 5)
    for p in similarity.parameters():
        p.add_(1)
    assert same(index.search(queries, 5), before) and similarity.training and hasattr(similarity, 'scratch')


# -- other similarities --


@pytest.mark.parametrize(
    'make',
    [lambda: Dot(), lambda: Dot(normalise=False), lambda: MLP(D, 8), lambda: FM(D, 4), lambda: NeuralFM(D, 4)],
    ids=['cosine', 'dot', 'mlp', 'fm', 'neuralfm'],
)
def test_any_similarity_and_a_head(make):
    torch.manual_seed(0)
    similarity, items, queries = make().eval(), torch.randn(300, D), torch.randn(70, D)
    truth = similarity(queries, items).topk(9).values
    assert torch.allclose(BruteForce.build(similarity, items, storage='fp32').search(queries, 9)[0], truth, atol=1e-4)
    head = HIndexer.build(similarity, items, storage='fp32', head=Head(D, 4), k_prime=300)
    assert torch.allclose(head.search(queries, 9)[0], truth, atol=1e-4)
    for kind in (PerComponent, ComponentMean, Combined, Exact):
        with pytest.raises(
            ConfigError, match=f'{kind.__name__} needs components and a {type(similarity).__name__} has none'
        ):
            kind.build(similarity, items)
    if isinstance(similarity, Dot):
        assert relative_recall(HIndexer.build(similarity, items, k_prime=100).search(queries, 9)[0], truth, 0.2) > 0.95
    else:
        with pytest.raises(ConfigError, match='head: '):
            HIndexer.build(similarity, items)


# -- odd questions --


@every
def test_every_kind_of_nothing(kind):
    for n in (0, 1):
        index = kind.build(mol(), torch.ones(n, D), [5][:n])
        for k in (1, 3):
            scores, ids = index.search(torch.ones(2, D), k)
            assert ids.tolist() == [[5][:n] + [-1] * (k - n)] * 2 and scores[:, n:].eq(-torch.inf).all()
            assert index.search(torch.ones(0, D), k)[1].shape == (0, k)
            assert (index.search(torch.ones(2, D), k, allow=[])[1] == -1).all() and (
                index.search(torch.ones(2, D), k, exclude=[[5], [5]])[1] == -1
            ).all()
    index = kind.build(mol(), torch.eye(D))
    index.remove(range(D))
    assert len(index) == 0 and (index.search(torch.ones(1, D), 2)[1] == -1).all()
    index.add([3], torch.ones(1, D))
    assert index.search(torch.ones(1, D), 2)[1].tolist() == [[3, -1]]


@impls
@every
def test_constant_scores_go_to_the_lowest_ids(kind, impl):
    index = kind.build(
        mol(),
        torch.ones(500, D),
        torch.arange(500).flip(0),
        impl=impl,
        **({'k_prime': 500} if has(kind, 'k_prime') else {}),
    )
    assert index.search(torch.ones(3, D), 7)[1].tolist() == [[0, 1, 2, 3, 4, 5, 6]] * 3


@every
def test_refusals_name_argument_and_row_and_change_nothing(kind):
    index = kind.build(mol(), torch.eye(D), torch.arange(10, 10 + D))
    before, queries = index.search(torch.eye(D), 3), torch.eye(D)
    bad = torch.eye(D)
    bad[2, 1] = torch.inf
    huge = torch.eye(D)
    huge[1] = 3e38
    loud = mol()
    loud.gate_item[2].weight.mul_(1e30)
    for message, call in {
        'queries: row 2 has NaN or infinity': lambda: index.search(bad, 3),
        r'queries: .* shape \(6, 5\), wanted': lambda: index.search(queries[:, :5], 3),
        'queries: torch.int64': lambda: index.search(queries.long(), 3),
        'items: row 2 has NaN or infinity': lambda: index.add(range(D), bad),
        'items: the item side of one of the ids 0 to 5': lambda: kind.build(loud, huge),
        r'items: .* shape \(6, 5\), wanted': lambda: index.add(range(D), queries[:, :5]),
        'ids: got 2, wanted one for each of 6': lambda: index.add([1, 2], queries),
        'ids: 12 is in the index already': lambda: index.add([1, 12], queries[:2]),
        'ids: 3 occurs twice': lambda: index.add([3, 3], queries[:2]),
        'ids: got -1, wanted none below 0': lambda: index.add([-1], queries[:1]),
        'ids: 99 is not in the index': lambda: index.remove([10, 99]),
        'ids: 11 occurs twice': lambda: index.remove([11, 11]),
        'ids: 98 is not': lambda: index.update([98], queries[:1]),
        'items: 2 rows, wanted one for each of 1': lambda: index.update([10], queries[:2]),
        'ids: torch.float32 of shape': lambda: index.remove(torch.ones(2)),
        'exclude: 1 lists, wanted one for each of 6': lambda: index.search(queries, 3, exclude=[[1]]),
        'exclude: 2 lists, wanted': lambda: index.search(queries, 3, exclude=([1, 2], [0, 2])),
        'exclude: 2 offsets for 2 ids': lambda: index.search(queries, 3, exclude=Sequences([0], [0, 2], [1, 2])),
        r'allow: a mask of shape \(2,\)': lambda: index.search(queries, 3, allow=torch.ones(2, dtype=torch.bool)),
        'users: 1 for 6 queries': lambda: index.search(queries, 3, users=[0]),
    }.items():
        with pytest.raises(DataError, match=message):
            call()
    for k in (0, -1, 2.5, True):
        with pytest.raises(ConfigError, match='k: got'):
            index.search(queries, k)
    assert (index.search(huge, 3)[0].isfinite()).all()  # its square is beyond single precision, its direction is not
    assert same(index.search(torch.eye(D), 3), before) and len(index) == D


# -- files --


@pytest.fixture()
def filed(tmp_path):
    index = HIndexer.build(mol(), torch.randn(40, D, generator=torch.Generator().manual_seed(0)), k_prime=20)
    index.save(tmp_path / 'it')
    return index, tmp_path / 'it'


def test_any_altered_byte_is_refused_or_harmless(filed):
    index, path = filed
    whole, queries = path.read_bytes(), torch.ones(2, D)
    truth, header = index.search(queries, 9), 8 + int.from_bytes(whole[:8], 'little')
    places = [*range(header), *range(header, len(whole), 13)]
    for at in places[::3]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        try:
            assert same(Index.load(path, mol()).search(queries, 9), truth)  # a blank that became another blank
        except DataError as e:
            assert str(path) in str(e)


@pytest.mark.parametrize('keep', [0, 4, 8, 100, -1])
def test_a_truncated_file_is_refused(filed, keep):
    index, path = filed
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match='it: truncated, altered'):
        Index.load(path, mol())


def test_what_is_not_the_file_is_refused_by_name(filed, tmp_path):
    index, path = filed
    assert type(Index.load(path, mol())) is type(ComponentMean.load(path, mol())) is HIndexer
    with pytest.raises(DataError, match='it: holds HIndexer, wanted BruteForce'):
        BruteForce.load(path, mol())
    with pytest.raises(DataError, match='it: of another model'):
        Index.load(path, mol(seed=3))
    with pytest.raises(DataError, match='it: of another model'):
        Index.load(path, mol(temperature=0.06))
    with pytest.raises(DataError, match='gone: no such file'):
        Index.load(tmp_path / 'gone', mol())
    with pytest.raises(DataError, match='no such file'):
        Index.load(tmp_path, mol())
    save_file({'x': torch.ones(3)}, tmp_path / 'other')
    with pytest.raises(DataError, match='other: a safetensors file, but not an index'):
        Index.load(tmp_path / 'other', mol())
    (tmp_path / 'text').write_text('not safetensors')
    with pytest.raises(DataError, match='text: truncated, altered or no safetensors'):
        Index.load(tmp_path / 'text', mol())
    path.write_bytes(path.read_bytes().replace(b'version\\": 1', b'version\\": 7'))
    with pytest.raises(DataError, match='it: format version 7, this molrec reads 1'):
        Index.load(path, mol())


def test_skipping_the_checksum_skips_only_that(filed):
    index, path = filed
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match='contents do not match'):
        Index.load(path, mol())
    assert len(Index.load(path, mol(), verify=False)) == 40
    with pytest.raises(DataError, match='another model'):
        Index.load(path, mol(seed=1), verify=False)


def test_a_head_that_was_given_is_asked_for_again(tmp_path):
    similarity, head, items = mol(), Head(D, 4), torch.randn(50, D)
    index = HIndexer.build(similarity, items, head=head, k_prime=20, seed=5)
    index.save(tmp_path / 'it')
    assert same(Index.load(tmp_path / 'it', similarity, head=head).search(items, 4), index.search(items, 4))
    with pytest.raises(DataError, match='another model'):
        Index.load(tmp_path / 'it', similarity, head=Head(D, 4))
    with pytest.raises(DataError, match='another model'):
        Index.load(tmp_path / 'it', similarity)
    cosine = HIndexer.build(Dot(), items)
    cosine.save(tmp_path / 'dot')
    assert same(Index.load(tmp_path / 'dot', Dot()).search(items, 4), cosine.search(items, 4))


killed = """
import os, sys, time, torch
from molrec.search import index, stored
from molrec.similarities.dot import Dot
torch.set_num_threads(1)
it = index.BruteForce.build(Dot(), torch.ones(200_000, 32))
plain = stored.raw
def slowly(t):
    if t.dim() > 1 and len(written := [p for p in os.listdir(sys.argv[2]) if p[0] == '.']): print('writing', flush=True); time.sleep(60)
    return plain(t)
stored.raw = slowly
it.save(sys.argv[1])
"""


def test_killed_while_saving_leaves_the_old_file(tmp_path):
    path = tmp_path / 'it'
    BruteForce.build(Dot(), torch.eye(D)).save(path)
    before = path.read_bytes()
    process = subprocess.Popen([sys.executable, '-c', killed, str(path), str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b'writing\n'
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    assert path.read_bytes() == before and len(Index.load(path, Dot())) == D


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / 'it'
    BruteForce.build(Dot(), torch.eye(D)).save(path)

    def full(fd):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space'):
        BruteForce.build(Dot(), torch.ones(9, D)).save(path)
    assert os.listdir(tmp_path) == ['it'] and len(Index.load(path, Dot())) == D


both = """
import sys, torch
from molrec.search.index import BruteForce
from molrec.similarities.dot import Dot
torch.set_num_threads(1)
it = BruteForce.build(Dot(), torch.full((20_000, 16), float(sys.argv[2])))
for _ in range(4): it.save(sys.argv[1])
"""


def test_two_processes_that_save_at_once_leave_one_whole_file(tmp_path):
    path = tmp_path / 'it'
    processes = [subprocess.Popen([sys.executable, '-c', both, str(path), str(i)]) for i in (1, 2)]
    deadline, seen = time.monotonic() + 60, 0
    while any(p.poll() is None for p in processes) and time.monotonic() < deadline:
        if path.exists():
            seen += len(Index.load(path, Dot())) == 20_000  # whole at any moment
        time.sleep(0.02)
    assert [p.wait(30) for p in processes] == [0, 0] and os.listdir(tmp_path) == ['it']
    assert len(Index.load(path, Dot())) == 20_000


@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='reads resident memory from /proc')
def test_a_loaded_index_is_mapped_not_copied(tmp_path):
    items = torch.randn(400_000, 32)
    BruteForce.build(Dot(normalise=False), items, storage='fp32').save(tmp_path / 'it')

    def own_mib():
        return next(int(line.split()[1]) / 1024 for line in open('/proc/self/status') if line.startswith('RssAnon'))

    before = own_mib()
    index = Index.load(tmp_path / 'it', Dot(normalise=False))
    index.search(items[:1], 3)
    assert own_mib() - before < 25  # the file holds 52
    bytes_before = (tmp_path / 'it').read_bytes()
    index.update([5], items[:1])
    assert (
        torch.equal(index.state.table.side(index.state.items.n - 1 + torch.arange(1))[0], items[:1])
        and (tmp_path / 'it').read_bytes() == bytes_before
    )


# -- stage 1's sample --


def test_a_sampled_stage_1_does_not_depend_on_the_order_of_rows():
    "20,000 items, of which a sample sets the threshold: grown and shrunk as against built at once in another order."
    rng = torch.Generator().manual_seed(0)
    items, queries, ids = (
        torch.randn(24_000, D, generator=rng),
        torch.randn(8, D, generator=rng),
        torch.randperm(24_000, generator=rng),
    )
    index = HIndexer.build(mol(), items[:15_000], ids[:15_000], k_prime=300, storage='compact-int8')
    index.add(ids[15_000:], items[15_000:])
    index.remove(ids[3_000:7_000])
    order = torch.cat([torch.arange(7_000, 24_000), torch.arange(3_000)])
    again = HIndexer.build(mol(), items[order], ids[order], k_prime=300, storage='compact-int8')
    narrow = ids[order][::7]
    assert same(index.search(queries, 50), again.search(queries, 50)) and same(
        index.search(queries, 50, allow=narrow), again.search(queries, 50, allow=narrow)
    )
    assert (index.answer(queries, 50).scored < 1_000).all() and not torch.equal(
        again.search(queries, 50)[1],
        HIndexer.build(mol(), items[order], ids[order], k_prime=60, seed=9).search(queries, 50)[1],
    )
