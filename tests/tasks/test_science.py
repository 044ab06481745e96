"What must hold of the models themselves: a dot product has a ceiling that MoL passes; any encoder trains with any similarity and any loss."

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from molrec.data.splits import split
from molrec.metrics.from_ranks import hr_at_k
from molrec.settings.config import Config
from molrec.similarities.dot import Dot
from molrec.similarities.mol import MoL
from molrec.tasks.evaluation import evaluate
from molrec.tasks.model import make_model
from molrec.tasks.retrieval import fit


def subsets(m):
    "A user for every subset of m items but the empty and the full one: (2^m - 2, m) of 0 and 1."
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=m)))[1:-1]


def ceiling(m, d):
    "Largest share of those subsets that half-spaces of d-dimensional points can cut off (Cover 1965)."
    return (2 * sum(math.comb(m - 1, i) for i in range(d + 1)) - 2) / (2**m - 2)


def served(similarity, likes, d, seed, steps=1200, lr=0.02):
    "Share of users whose liked items fill the top of their list, after fitting free vectors of width d to every pair."
    torch.manual_seed(seed)
    users, items = (nn.Parameter(torch.randn(n, d)) for n in likes.shape)
    optimiser = torch.optim.Adam([users, items, *similarity.parameters()], lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, steps)
    for _ in range(steps):
        s = similarity(users, items)
        margin = F.softplus(
            s.masked_fill(likes == 1, -1e4).logsumexp(1) + (-s).masked_fill(likes == 0, -1e4).logsumexp(1)
        ).mean()
        optimiser.zero_grad()
        margin.backward()
        optimiser.step()
        schedule.step()
    s = similarity(users, items)
    return (
        (s.masked_fill(likes == 0, torch.inf).amin(1) > s.masked_fill(likes == 1, -torch.inf).amax(1))
        .float()
        .mean()
        .item()
    )


@pytest.mark.parametrize('seed', [0, 1])
def test_mol_passes_the_ceiling_of_any_dot_product(seed):
    m, d = 8, 3
    likes, top = subsets(m), ceiling(m, d)
    assert abs(top - 126 / 254) < 1e-12
    torch.manual_seed(seed)
    mol = MoL(d, 4, 4, 8, query_hidden=64, gate_hidden=32, item_dropout=0.0, mix_dropout=0.0, balance_weight=0.0)
    for dot in (Dot(normalise=False, temperature=1.0), Dot(normalise=True, temperature=0.1)):
        assert served(dot, likes, d, seed) <= top + 1e-6  # holds for every vector of this width: a theorem
    assert served(mol, likes, d, seed) > top + 0.3


def test_subsets_of_few_items_are_no_obstacle():
    "The obstacle is the rank, not the fitting: where half-spaces can cut everything, the dot product gets there."
    assert ceiling(4, 3) == 1
    assert served(Dot(normalise=False, temperature=1.0), subsets(4), 3, seed=0) == 1


@pytest.fixture(scope='module')
def tiny():
    rng, n = np.random.default_rng(0), 40
    walk = (rng.integers(30, size=(n, 1)) + rng.integers(1, 3, (n, 10)).cumsum(1)) % 30
    return split(
        pd.DataFrame(
            dict(user_id=np.repeat(np.arange(n), 10), item_id=walk.ravel(), timestamp=np.tile(np.arange(10), n))
        ),
        max_length=10,
    )


@pytest.mark.parametrize(
    'encoder,similarity,loss',
    list(
        itertools.product(
            ['sasrec', 'hstu', 'gru4rec', 'bert4rec', 'svd', 'popularity'],
            ['dot', 'mlp', 'fm', 'neuralfm', 'mol'],
            ['sampled-softmax', 'bce', 'gbce', 'in-batch-softmax', 'full-softmax'],
        )
    ),
)
def test_any_pairing_trains(tiny, tmp_path, encoder, similarity, loss):
    c = Config(
        encoder=encoder,
        similarity=similarity,
        loss=loss,
        dim=8,
        ffn=8,
        n_heads=2,
        head_dim=4,
        max_length=10,
        epochs=2,
        batch_size=8,
        n_negatives=6,
        share=16,
        hidden=8,
        n_query=3,
        n_item=2,
        width=4,
        n_uid=1,
        query_hidden=8,
        gate_hidden=8,
        lr=5e-3,
        warmup_steps=2,
    )
    state = fit(c, tiny, tmp_path, progress=False)
    ranks = evaluate(state.model, tiny.test, 10)
    assert len(ranks) == len(tiny.test) and ranks.ranks.max() <= tiny.n_items
    assert all(math.isfinite(e['loss']) for e in state.book['history'])


@pytest.mark.parametrize('share', [1, 32])
@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
@pytest.mark.parametrize('deal', [False, True])
def test_own_and_shared_negatives_train_mol(tiny, tmp_path, share, precision, deal):
    c = Config(
        similarity='mol',
        share=share,
        precision=precision,
        deal=deal,
        dim=8,
        ffn=8,
        max_length=10,
        epochs=4,
        batch_size=8,
        n_negatives=6,
        n_query=3,
        n_item=2,
        width=4,
        query_hidden=8,
        gate_hidden=8,
        lr=1e-2,
        warmup_steps=2,
        patience=9,
    )
    losses = [e['loss'] for e in fit(c, tiny, tmp_path, progress=False).book['history']]
    assert losses[-1] < losses[0]


def test_mol_goes_on_where_the_dot_product_stopped(tiny, tmp_path):
    settings = dict(
        dim=8,
        ffn=8,
        max_length=10,
        epochs=8,
        batch_size=8,
        n_negatives=12,
        share=16,
        deal=True,
        lr=1e-2,
        warmup_steps=2,
        patience=9,
    )
    trained = fit(Config(**settings), tiny, tmp_path, progress=False).model

    def hits(model):
        return hr_at_k(evaluate(model, tiny.test, 10), 5).mean()

    def taken_over(start):
        mol = make_model(
            Config(
                similarity='mol',
                dot_start=start,
                n_query=3,
                n_item=2,
                width=8,
                query_hidden=32,
                gate_hidden=8,
                **settings,
            ),
            tiny,
        )
        mol.encoder.load_state_dict(trained.encoder.state_dict())
        return hits(mol.eval())

    assert hits(trained) > 0.5
    assert taken_over(True) > 0.8 * hits(trained) > taken_over(False) + 0.3
