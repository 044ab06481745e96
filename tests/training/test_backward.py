"Every backward pass that is written by hand against autograd of the plain form in fp64, where such formulas go wrong: floors, emptied groups, saturated values, absent parts."

import copy
import importlib
import importlib.util
import itertools
import math
import os
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from molrec.base.errors import ConfigError
from molrec.base.native import build
from molrec.encoders import hstu_attention
from molrec.encoders import packed as encoders
from molrec.encoders.gru4rec import gru
from molrec.kernels import time_buckets
from molrec.similarities import mol_step
from molrec.similarities.counted_dropout import new_seed, without_some
from molrec.similarities.dot import Dot, Head
from molrec.similarities.fm import FM
from molrec.similarities.mlp import MLP
from molrec.similarities.mol import MoL
from molrec.similarities.neuralfm import NeuralFM
from molrec.training import losses
from molrec.training.losses import (
    bce_criterion,
    calibrated_bce,
    draw_negatives,
    full_loss,
    in_batch_loss,
    sampled_loss,
    softmax_criterion,
)

ON_GPU = torch.cuda.is_available()
if importlib.util.find_spec('triton') and not ON_GPU:
    with patch.dict(os.environ):  # now, at collection: a later one would take Triton away from tests that hold it
        from molrec.kernels.backend import interpret

        interpret()
        importlib.import_module('molrec.kernels.mol_loss')


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def gaps(ours, truth, least):
    "Distance of each tensor to the truth, over the truth's length or `least` (of all, or of each); infinite where one of them is not finite."
    assert len(ours) == len(truth) > 0
    distances = []
    for a, b, floor in zip(ours, truth, least if isinstance(least, list) else [least] * len(ours), strict=True):
        assert a.shape == b.shape
        d = ((a.double() - b.double()).norm() / b.double().norm().clamp(min=floor)).item()
        distances.append(d if math.isfinite(d) else math.inf)
    return distances


def doubled(*tensors):
    return [None if t is None else t.detach().double().requires_grad_() for t in tensors]


def leaves(*tensors):
    return [None if t is None else t.detach().requires_grad_() for t in tensors]


def there(tensors):
    return [t for t in tensors if t is not None]


# -- from scores to loss and slopes --


def plain_softmax(pos, neg):
    return F.cross_entropy(
        torch.cat([pos[:, None], neg], 1), torch.zeros(len(pos), dtype=torch.int64), reduction='none'
    )


def plain_bce(pos, neg, beta=1.0):
    def verdict(x, y):
        return F.binary_cross_entropy_with_logits(x, torch.full_like(x, y), reduction='none')

    return (beta * verdict(pos, 1.0) + verdict(neg, 0.0).nan_to_num(posinf=0).sum(1)) / (neg.shape[1] + 1)


def plain_gbce(pos, neg):
    return plain_bce(pos, neg, 0.1 * (0.75 * (1 - 1 / 0.1) + 1 / 0.1))


criteria = dict(
    softmax=(softmax_criterion, plain_softmax),
    bce=(bce_criterion, plain_bce),
    gbce=(calibrated_bce(0.1, 0.75), plain_gbce),
)
score_kinds = dict(ordinary=(4, 1.0), one=(1, 1.0), none=(0, 1.0), large=(4, 100.0), very_large=(4, 1e4), flat=(4, 0.0))


@pytest.mark.parametrize('hidden', ['nothing', 'one', 'all'])
@pytest.mark.parametrize('scores', score_kinds)
@pytest.mark.parametrize('name', criteria)
def test_slopes_of_a_criterion(name, scores, hidden):
    (criterion, plain), (R, scale) = criteria[name], score_kinds[scores]
    pos, neg = leaves(scale * torch.randn(5, dtype=torch.float64), scale * torch.randn(5, R, dtype=torch.float64))
    mask = torch.full((5, R), hidden == 'all')
    if hidden == 'one' and R:
        mask[2, 0] = True
    low = -1e30 if 'bce' in name else -torch.inf  # the plain form of BCE takes no infinity
    wanted = plain(pos, neg.masked_fill(mask, low))
    loss, *slopes = criterion(pos.detach(), neg.detach().masked_fill(mask, -torch.inf))
    truth = torch.autograd.grad(wanted.sum(), [pos, neg])
    assert max(gaps([loss, *slopes], [wanted.detach(), *truth], 1e-3)) < 1e-7
    assert not slopes[1][mask].any()


# -- losses in tiles, any similarity --

similarities = dict(
    dot=lambda: Dot(),
    bare=lambda: Dot(False, 1.0),
    head=lambda: Head(8, 4),
    mlp=lambda: MLP(8),
    fm=lambda: FM(8),
    neuralfm=lambda: NeuralFM(8),
    mol=lambda: MoL(8, 4, 2, 4, n_uid=1, uid_rows=7),
    mol_pair=lambda: MoL(8, 4, 2, 4, gates='pair'),
    mol_item=lambda: MoL(8, 2, 2, 4, gates='item'),
    mol_one=lambda: MoL(8, 1, 1, 4, gates='query'),
)


def batch(kind, T=11, N=20, R=6):
    "Queries, items, targets and how many negatives."
    queries, items, targets = torch.randn(T, 8), torch.randn(N, 8), torch.randint(N, (T,))
    if kind == 'one item':
        items, targets = items[:1], torch.zeros_like(targets)  # every negative is the positive
    if kind == 'one position':
        queries, targets = queries[:1], targets[:1]
    if kind == 'one target':
        targets = torch.full_like(targets, 3)
    if kind == 'twins':
        items = items[:1].repeat(N, 1)
    if kind == 'zero vectors':
        queries, items = queries * (torch.arange(T)[:, None] > 5), items * (torch.arange(N)[:, None] % 2)
    if kind == 'below the floor':
        queries, items = queries * 1e-8, items * 1e-8  # of the norm, 1e-6
    if kind == 'large':
        queries, items = queries * 30, items * 30
    return queries, items, targets, R


batches = ['ordinary', 'one item', 'one position', 'one target', 'twins', 'zero vectors', 'below the floor', 'large']


def plain_loss(loss, similarity, queries, items, targets, negatives, share, users, plain, log_q):
    "Everything at once, in what dtype it comes."
    q, x = similarity.query_side(queries, users), similarity.item_side(items)
    pos, penalty = similarity.positive(q, tuple(t[targets] for t in x))
    if loss == 'sampled':
        own = negatives.repeat_interleave(share, 0)[: len(targets)]
    if loss == 'full':
        own = torch.arange(len(items)).expand(len(targets), -1)
    if loss != 'in batch':
        neg = similarity.scores(q, tuple(t[own] for t in x))
        return (
            plain(pos, neg.masked_fill(own == targets[:, None], -torch.inf if plain is plain_softmax else -1e30)).mean()
            + penalty
        )
    total = 0
    for i in range(0, len(targets), share):
        ids = targets[i : i + share]
        neg = similarity.scores(tuple(t[i : i + share] for t in q), tuple(t[ids] for t in x)) - log_q[ids]
        total = total + plain(pos[i : i + share] - log_q[ids], neg.masked_fill(ids[:, None] == ids, -torch.inf)).sum()
    return total / len(targets) + penalty


@pytest.mark.parametrize('kind', batches)
@pytest.mark.parametrize('name', similarities)
def test_losses_in_tiles(name, kind):
    similarity = similarities[name]().eval()
    similarity.tile_pairs = 13  # uneven tiles
    queries, items, targets, R = batch(kind)
    if kind == 'large' and name in ('bare', 'fm', 'neuralfm'):
        queries, items = queries / 10, items / 10  # their scores are of second order
    users, log_q, exact = (
        torch.arange(len(targets)),
        torch.log_softmax(torch.randn(len(items)), 0),
        copy.deepcopy(similarity).double(),
    )
    cases = [
        ('full', 1, softmax_criterion, plain_softmax),
        ('in batch', 4, softmax_criterion, plain_softmax),
        *(('sampled', share, *pair) for share, pair in itertools.product((1, 4, 100), criteria.values())),
    ]
    for loss, share, criterion, plain in cases:
        negatives = draw_negatives(len(targets), len(items), R, share)
        q, x = leaves(queries, items)
        if loss == 'sampled':
            ours = sampled_loss(similarity, q, x, targets, negatives, share, users, criterion)
        if loss == 'full':
            ours = full_loss(similarity, q, x, targets, users)
        if loss == 'in batch':
            ours = in_batch_loss(similarity, q, x, targets, log_q, share, users)
        q64, x64 = doubled(queries, items)
        truth = plain_loss(loss, exact, q64, x64, targets, negatives, share, users, plain, log_q.double())
        have, want = (
            torch.autograd.grad(value, [q, x, *model.parameters()], allow_unused=True, materialize_grads=True)
            for value, q, x, model in ((ours, q, x, similarity), (truth, q64, x64, exact))
        )
        found = gaps(
            [ours.detach(), *have], [truth.detach(), *want], 3.0 if kind == 'twins' else 1e-2
        )  # between twins most gradients vanish
        assert max(found) < 2e-3, (loss, share, criterion.__name__, found)


# -- tiles of MoL --


@pytest.fixture(params=['torch', 'own', 4, 8], ids=lambda kind: f'{kind} lanes' if isinstance(kind, int) else kind)
def impl(request):
    "Tiles in torch; the compiled ones as this processor has them; then with registers of other processors, which the compiler puts together."
    if request.param == 'torch':
        yield 'torch'
        return
    lanes = dict(LANES=request.param) if isinstance(request.param, int) else {}
    with patch.object(mol_step, 'build', lambda name, source, **given: build(name, source, **given, **lanes)):
        if mol_step.step_library(MoL(8, 4, 2, 4), 'fp32') is None:
            pytest.skip('no compiler, or no such step here')
        yield 'native'


gate_parts = ['query', 'item', 'pair', 'query+item', 'query+pair', 'item+pair', 'query+item+pair']


def mol_gaps(m, precision='fp32', t=5, R=7, f=None, seed=5, impl='torch'):
    "Tiles against autograd of the plain form in fp64, dropout from the same masks; and the share of pairs below the floor."
    with torch.no_grad():
        q, x = m.query_side(torch.randn(t, 8)), m.item_side(torch.randn(R, 8))
    if f is not None:
        q, x = (f(q[0]), *q[1:]), (f(x[0]), *x[1:])
    q, x, slopes = leaves(*q), leaves(*x), torch.randn(t, R)
    exact, q64, x64 = copy.deepcopy(m).double(), doubled(*q), doubled(*x)
    torch.manual_seed(seed)
    want = exact.scores(q64, x64)
    gate = [] if exact.gate_pair is None else list(exact.gate_pair.parameters())
    grads = torch.autograd.grad(
        (want * slopes).sum(), [*q64[:2], *x64, *gate], allow_unused=True, materialize_grads=True
    )
    torch.manual_seed(seed)
    tiles = mol_step.tiles_for(m, x, precision, impl)
    phi = tiles.forward(q)
    have = [*tiles.backward(slopes)[:2], *(g for g in tiles.grads if g is not None)]
    torch.manual_seed(seed)
    total = left_of(exact, q64, x64)
    return gaps([phi, *have], [want.detach(), *grads], 1e-4), (total < 1e-6).double().mean().item()


@torch.no_grad()
def left_of(m, q, x):
    "What dropout leaves of each pair's mixture, (t, R)."
    delta = m.logits(q[0], x[0])
    z = q[1].unsqueeze(1) * x[1]
    seed = new_seed() if m.drops else 0
    if m.gate_pair is not None:
        z = z + m.gate_pair(without_some(delta, ~seed, m.pair_dropout * m.training))
    p = F.silu(z).softmax(-1)
    if not (m.training and m.mix_dropout):
        return p.sum(-1)
    return without_some(p, seed, m.mix_dropout).sum(-1)


@pytest.mark.parametrize('rates', [(0.0, 0.0), (0.0, 0.2), (0.0, 0.9), (0.3, 0.5), (0.9, 0.9)])
@pytest.mark.parametrize('gates', gate_parts)
def test_tiles_of_mol_with_parts_of_the_gate_absent(gates, rates, impl):
    m = MoL(8, 4, 2, 4, gates=gates, pair_dropout=rates[0], mix_dropout=rates[1]).train()
    if impl == 'native' and m.gate_pair is None:
        with pytest.raises(ConfigError, match='no compiled step'):
            mol_gaps(m, impl=impl)
        return
    found, _ = mol_gaps(m, impl=impl)
    assert max(found) < 1e-4, found


@pytest.mark.parametrize(
    'shape',
    [(8, 4, 64, 128, 9, 50), (3, 5, 10, 20, 5, 37), (1, 1, 3, 1, 4, 12), (2, 7, 17, 33, 13, 11), (9, 2, 6, 40, 3, 25)],
    ids=lambda s: 'x'.join(map(str, s)),
)
def test_tiles_of_mol_of_many_shapes(shape, impl):
    n_query, n_item, width, hidden, t, R = shape
    m = MoL(8, n_query, n_item, width, gate_hidden=hidden, mix_dropout=0.2, pair_dropout=0.1).train()
    found, _ = mol_gaps(m, t=t, R=R, impl=impl)
    assert max(found) < 1e-4, found


@pytest.mark.parametrize(
    'lanes, shape',
    [(8, (8, 4, 64, 128, 9, 50)), (8, (2, 7, 17, 33, 13, 11)), (4, (3, 5, 10, 20, 5, 37)), (16, (2, 3, 5, 7, 5, 37))],
    ids=str,
)
def test_compiled_tiles_of_mol_in_bf16(lanes, shape):
    "The operands of products are rounded, nothing else: as near to fp64 as one rounding of each to eight bits allows."
    n_query, n_item, width, hidden, t, R = shape
    m = MoL(8, n_query, n_item, width, gate_hidden=hidden, mix_dropout=0.2, pair_dropout=0.1).train()
    with patch.object(
        mol_step, 'build', lambda name, source, **given: build(name, source, **given, LANES=lanes, ANYWHERE=1)
    ):
        if mol_step.step_library(m, 'bf16') is None:
            pytest.skip('no compiler here')
        assert mol_step.tiles_for(m, m.item_side(torch.randn(R, 8)), 'bf16', 'native').precision == 'bf16'
        found, _ = mol_gaps(m, 'bf16', t, R, impl='native')
        rough, _ = mol_gaps(m, 'bf16', t, R, impl='torch')
    assert 1e-4 < max(found) < 0.02 and max(found) < max(rough), (found, rough)


def test_compiled_tiles_with_sixteen_lanes():
    "Of a small model: put together from smaller registers, they take a compiler long."
    m = MoL(8, 2, 3, 5, gate_hidden=7, mix_dropout=0.2).train()
    with patch.object(mol_step, 'build', lambda name, source, **given: build(name, source, **given, LANES=16)):
        if mol_step.step_library(m, 'fp32') is None:
            pytest.skip('no compiler here')
        found, _ = mol_gaps(m, t=9, R=50, impl='native')
    assert max(found) < 1e-4, found


@pytest.mark.parametrize('threads', [1, 2, 3])
def test_compiled_tiles_draw_the_same_masks_on_any_number_of_threads_and_in_tiles_of_any_size(threads):
    m, before = MoL(8, 4, 2, 4, mix_dropout=0.3).train(), torch.get_num_threads()
    if mol_step.step_library(m, 'fp32') is None:
        pytest.skip('no compiler, or no such step here')
    with torch.no_grad():
        q, x = m.query_side(torch.randn(21, 8)), m.item_side(torch.randn(30, 8))

    def scores(step):
        torch.manual_seed(3)
        tiles = mol_step.tiles_for(m, x, impl='native')
        return torch.cat([tiles.forward(tuple(t[i : i + step] for t in q)) for i in range(0, 21, step)])

    torch.manual_seed(3)
    with torch.no_grad():
        want = m.scores(q, x)
    torch.set_num_threads(threads)
    try:
        for step in (1, 3, 8, 21):
            torch.testing.assert_close(scores(step), want, rtol=0, atol=1e-4)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize('loss', ['sampled', 'full', 'in batch'])
def test_a_loss_is_the_same_with_compiled_tiles(loss):
    m = MoL(8, 4, 2, 4, mix_dropout=0.3, item_dropout=0.2).train()
    if mol_step.step_library(m, 'fp32') is None:
        pytest.skip('no compiler, or no such step here')
    queries, items, targets = torch.randn(50, 8), torch.randn(30, 8), torch.randint(30, (50,))

    def run(impl):
        torch.manual_seed(4)
        q, x = leaves(queries, items)
        with patch.object(
            losses,
            'tiles_for',
            lambda similarity, side, precision, _: mol_step.tiles_for(similarity, side, precision, impl),
        ):
            if loss == 'full':
                value = full_loss(m, q, x, targets)
            if loss == 'in batch':
                value = in_batch_loss(m, q, x, targets, torch.zeros(30), 20)
            if loss == 'sampled':
                value = sampled_loss(m, q, x, targets, draw_negatives(50, 30, 13, 20), 20)
        return [
            value.detach(),
            *torch.autograd.grad(value, [q, x, *m.parameters()], allow_unused=True, materialize_grads=True),
        ]

    assert max(gaps(run('native'), [t.double() for t in run('torch')], 1e-4)) < 1e-4


@pytest.mark.parametrize(
    'sure, least, most', [(8, 0, 0), (14, 0.05, 0.95), (16, 0.05, 0.95), (30, 0.2, 0.95), (300, 0.2, 0.95)]
)
def test_tiles_of_mol_where_dropout_takes_the_logit_that_counts(sure, least, most, impl):
    torch.manual_seed(0)
    m = MoL(8, 4, 2, 4, mix_dropout=0.5).train()
    with torch.no_grad():
        m.gate_pair[2].bias[3] += sure
    found, faint = mol_gaps(m, impl=impl)
    assert least <= faint <= most
    assert max(found) < 1e-4, found


def test_tiles_of_mol_in_bf16_where_dropout_takes_the_logit_that_counts():
    "Rounding moves a pair that is near the floor to its other side, so single models differ widely: the middle one of five."
    worst = []
    for seed in range(5):
        torch.manual_seed(seed)
        m = MoL(8, 4, 2, 4, mix_dropout=0.5).train()
        with torch.no_grad():
            m.gate_pair[2].bias[3] += 30
        found, faint = mol_gaps(m, 'bf16', 16, 64)
        assert faint > 0.05
        worst.append(max(found))
    assert sorted(worst)[2] < 0.1, worst


@pytest.mark.parametrize('kind', ['one pair', 'one logit', 'nothing kept', 'zero components', 'cold'])
def test_tiles_of_mol_at_the_edge(kind, impl):
    m = MoL(
        8,
        *((1, 1) if kind == 'one logit' else (2, 1)),
        4,
        mix_dropout=0.99 if kind == 'nothing kept' else 0.5,
        temperature=0.001 if kind == 'cold' else 0.05,
    ).train()
    found, faint = mol_gaps(
        m,
        t=1 if kind == 'one pair' else 9,
        R=1 if kind == 'one pair' else 6,
        f=torch.zeros_like if kind == 'zero components' else None,
        impl=impl,
    )
    assert faint > 0 or kind != 'nothing kept'
    assert max(found) < 1e-3, found


# -- attention and memory --


@pytest.fixture(scope='module', params=[None, 4, 8, 16], ids=lambda lanes: f'{lanes} lanes' if lanes else 'own')
def compiled(request):
    "The compiled forms: this processor's own; then with registers of other processors, which the compiler puts together. None: there is none."
    constants = dict(LANES=request.param) if request.param else {}
    sources = dict(
        softmax=encoders.softmax_source + encoders.softmax_back_source,
        hstu=hstu_attention.silu_source + hstu_attention.silu_back_source + hstu_attention.buckets_source,
    )
    built = [build(name, source, **constants) for name, source in sources.items()]
    with (
        patch.object(encoders, 'softmax_library', lambda: built[0]),
        patch.object(hstu_attention, 'silu_library', lambda: built[1]),
    ):
        yield None if None in built else built


lengths = dict(few=[1, 7, 0, 33, 33, 1], one=[1], between_nothing=[0, 3, 0], tile=[8, 32, 64])


def packed(kind, h, d, dv, whole=True):
    "Borders; queries, keys, values. `whole`: scores that fp32 holds exactly, however large."
    offsets = torch.tensor([0, *lengths[kind]]).cumsum(0)
    T = int(offsets[-1])
    draw = (lambda w: torch.randint(-3, 4, (T, h, w)).float()) if whole else (lambda w: torch.randn(T, h, w))
    return offsets, draw(d), draw(d), draw(dv)


@pytest.mark.parametrize('scale', [0.0, 1.0, 16.0, 1024.0])
@pytest.mark.parametrize('causal', [True, False])
@pytest.mark.parametrize('kind', lengths)
@pytest.mark.parametrize('impl', ['native', 'torch'])
def test_softmax_attention(impl, kind, causal, scale, compiled):
    if impl == 'native' and not compiled:
        pytest.skip('no compiler, or none of the forms here')
    offsets, q, k, v = packed(kind, 2, 16, 16)
    q, slopes = q * scale, torch.randn(len(q), 32)

    def run(q, k, v, attend):
        out = attend(*(t.flatten(1) for t in (q, k, v)))
        return out.detach(), *torch.autograd.grad((out * slopes.to(out)).sum(), [q, k, v])

    def by_hand(q, k, v):
        "One sequence and one head after the other."
        rows = []
        for a, b in itertools.pairwise(offsets.tolist()):
            Q, K, V = (t[a:b].unflatten(1, (2, 16)).transpose(0, 1) for t in (q, k, v))
            s = Q @ K.mT / 4
            if causal:
                s = s.masked_fill(torch.ones(b - a, b - a).triu(1).bool(), -torch.inf)
            rows.append((s.softmax(-1) @ V).transpose(0, 1).flatten(1))
        return torch.cat(rows)

    ours = run(*leaves(q, k, v), lambda *x: encoders.packed_attention(*x, offsets, 2, causal, impl))
    size = 3 * slopes.norm().item()  # of what is summed on the way back; where attention is certain the sums vanish
    assert max(gaps(ours, run(*doubled(q, k, v), by_hand), [1e-3, size, size * max(1, scale), 1e-3])) < (
        1e-5 if impl == 'native' else 1e-4
    )  # torch takes the weights from a rounded logsumexp


def silu_by_hand(q, k, v, distance, elapsed, offsets, times, asked, n):
    rows, zero = [], len(distance) // 2
    for a, b in itertools.pairwise(offsets.tolist()):
        at = torch.arange(b - a)
        s = torch.einsum('ihd,jhd->hij', q[a:b], k[a:b]) + distance[zero + at - at[:, None]]
        if elapsed is not None:
            s = s + elapsed[hstu_attention.pair_buckets(asked[None, a:b], times[None, a:b])[0].long()]
        rows.append(torch.einsum('hij,jhd->ihd', F.silu(s).tril(), v[a:b]) / n)
    return torch.cat(rows)


@pytest.mark.parametrize('scale', [0.0, 1.0, 64.0, 4096.0])
@pytest.mark.parametrize('timed', [True, False])
@pytest.mark.parametrize('kind', lengths)
@pytest.mark.parametrize('impl', ['native', 'torch'])
def test_silu_attention(impl, kind, timed, scale, compiled):
    if impl == 'native' and not compiled:
        pytest.skip('no compiler, or none of the forms here')
    offsets, q, k, v = packed(kind, 2, 16, 8)
    T, q = len(q), q * scale
    distance, elapsed, slopes = (
        torch.randn(161),
        torch.randn(time_buckets.n_buckets) if timed else None,
        torch.randn(T, 2, 8),
    )
    times = torch.randint(10**8, (T,))
    asked = times + torch.randint(10**5, (T,))

    def run(given, attend):
        out = attend(*given)
        return out.detach(), *torch.autograd.grad((out * slopes.to(out)).sum(), there(given))

    clock = hstu_attention.Clock(offsets, times, asked) if timed else hstu_attention.Clock(offsets)
    ours = run(leaves(q, k, v, distance, elapsed), lambda *x: hstu_attention.hstu_attention(*x, clock, 80, impl))
    truth = run(doubled(q, k, v, distance, elapsed), lambda *x: silu_by_hand(*x, offsets, times, asked, 80))
    assert max(gaps(ours, truth, 1e-3)) < 2e-5


@pytest.mark.parametrize('scale', [0.0, 1.0, 30.0, 1e4])
@pytest.mark.parametrize('alive', [[4, 4, 3, 1, 1], [1], [3], [1, 1, 1]])
def test_memory(alive, scale):
    network = nn.GRU(6, 5, num_layers=2)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randint(-2, 3, p.shape) * 0.25)
    x, aim = torch.randint(-3, 4, (sum(alive), 6)).float() * scale, torch.randn(sum(alive), 5)
    exact = copy.deepcopy(network).double()

    def run(network, x, out):
        return out.detach(), *torch.autograd.grad((out * aim.to(out)).sum(), [x, *network.parameters()])

    (a,), (b,) = leaves(x), doubled(x)
    steps = torch.tensor(alive)
    assert (
        max(gaps(run(network, a, gru(network, a, steps)), run(exact, b, exact(PackedSequence(b, steps))[0].data), 1e-3))
        < 2e-5
    )


# -- kernels, in Triton's interpreter --


@pytest.fixture
def interpreter_on(monkeypatch):
    if not ON_GPU:
        monkeypatch.setenv('TRITON_INTERPRET', '1')


def kernel_page(name):
    "The module; where there is no GPU it was imported for the interpreter, when tests were collected."
    pytest.importorskip('triton', reason='Triton exists for Linux only')
    return importlib.import_module(f'molrec.kernels.{name}')


@pytest.mark.parametrize('kind', ['faint', 'nobody'])
def test_kernels_of_the_mixture(kind, interpreter_on):
    page, (T, R, share, P_q, P_x, d, H) = kernel_page('mol_loss'), (5, 6, 3, 4, 2, 16, 16)
    groups, G, device = 2, P_q * P_x, 'cuda' if ON_GPU else 'cpu'
    tensors = [
        F.normalize(torch.randn(T, P_q, d), dim=-1),
        torch.randn(T, G),
        F.normalize(torch.randn(groups, R, P_x, d), dim=-1),
        torch.randn(groups, R, G),
        torch.randn(T),
        torch.randn(H, G) * 0.1,
        torch.randn(H) * 0.1,
        torch.randn(G, H) * 0.2,
        torch.randn(G) * 0.1,
    ]
    if kind == 'faint':
        tensors[8][3] += 15
    targets, ids = (
        torch.zeros(shape, dtype=torch.int64, device=device)
        if kind == 'nobody'
        else torch.randint(20, shape, device=device)
        for shape in ((T,), (groups, R))
    )

    def run(tensors, impl):
        loss = page.mol_loss(
            *tensors[:4], tuple(tensors[5:]), tensors[4], targets, ids, share, mix_dropout=0.5, seed=3, impl=impl
        )
        return loss.detach(), *torch.autograd.grad(loss, tensors)

    tensors = [t.to(device) for t in tensors]
    found = gaps(run(leaves(*tensors), 'triton'), run(doubled(*tensors), 'torch'), 1e-2)
    assert max(found) < 1e-3, found
