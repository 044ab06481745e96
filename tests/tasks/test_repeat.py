"The same configuration on the same number of threads ends in the same weights, bit for bit, in another process, for every kind of model."

import dataclasses
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from molrec.base.files import digest
from molrec.data.splits import split
from molrec.settings.config import Config, choices
from molrec.tasks.preparation import some_users
from molrec.tasks.retrieval import fit

ROOT = Path(__file__).resolve().parents[2]
few = dict(loss_share=0.2)  # of the positions, where every pair is dear
mol = dict(similarity='mol', n_query=4, n_item=2, width=32, query_hidden=64, gate_hidden=32, n_negatives=128, **few)
own = dict(share=1, n_negatives=16)

kinds = {
    'sasrec, dot': dict(),
    'sasrec, dot, dealt': dict(deal=True, share=512),
    'sasrec, dot, own, bce': dict(loss='bce', **own),
    'sasrec, dot, dealt, gbce': dict(loss='gbce', deal=True),
    'sasrec, dot, in-batch': dict(loss='in-batch-softmax', share=512),
    'sasrec, dot, full': dict(loss='full-softmax'),
    'sasrec, fm, own': dict(similarity='fm', **own),
    'hstu, dot, no times': dict(encoder='hstu', use_time=False),
    'hstu, dot, usual time': dict(encoder='hstu', ask='usual'),
    'hstu, mol, users, head': dict(encoder='hstu', n_uid=1, head_width=16, deal=True, pair_dropout=0.1, **mol),
    'hstu, mol, bf16': dict(encoder='hstu', precision='bf16') | mol | dict(loss_share=0.03),
    'sasrec, mol, alternate': dict(schedule='alternate', **mol),
    'sasrec, mol, own': dict(mol, **own),
    'gru4rec, dot': dict(encoder='gru4rec', n_blocks=1),
    'bert4rec, dot': dict(encoder='bert4rec', n_heads=2),
    'svd, mlp': dict(encoder='svd', similarity='mlp', n_negatives=128, **few),
    'svd, neuralfm, own': dict(encoder='svd', similarity='neuralfm', **own, **few),
    'svd, fm': dict(encoder='svd', similarity='fm'),
    'svd, mol': dict(encoder='svd', **mol),
}


@functools.cache
def world(n_users, n_items, longest):
    "A split in which a few items are had by nearly everybody; every item occurs."
    rng, popularity = np.random.default_rng(0), 1 / np.arange(1, n_items + 1)
    users = [
        rng.choice(n_items, rng.integers(longest // 2, longest), replace=False, p=popularity / popularity.sum())
        for _ in range(n_users)
    ]
    users[0] = np.union1d(users[0], np.setdiff1d(np.arange(n_items), np.concatenate(users)))
    at = np.concatenate([rng.integers(1, 10**6, len(u)).cumsum() for u in users])
    s = split(
        pd.DataFrame(
            dict(
                user_id=np.repeat(np.arange(n_users), [len(u) for u in users]),
                item_id=np.concatenate(users),
                timestamp=at,
            )
        ),
        max_length=longest,
    )
    return dataclasses.replace(s, valid=some_users(s.valid, 8), test=some_users(s.test, 8))


def trained(settings, s, batch_size):
    "sha256 of all weights after an epoch of each stage."
    c = Config(**dict(dict(dim=32, ffn=32, max_length=s.max_length, epochs=1, batch_size=batch_size), **settings))
    with tempfile.TemporaryDirectory() as folder:
        weights = fit(c, s, folder, progress=False).model.state_dict()
    return digest(*(part for name, t in sorted(weights.items()) for part in (name, t.numpy())))


# -- in processes of their own, at the size where torch shares work out --


def answers(threads):
    "kind to sha256, from a fresh process; three steps of about 3,600 positions on 3,706 items."
    env = os.environ | dict(
        OMP_NUM_THREADS=str(threads),
        MKL_NUM_THREADS=str(threads),
        OMP_WAIT_POLICY='PASSIVE',
        CUDA_VISIBLE_DEVICES='',
        PYTHONPATH=str(ROOT),
    )
    done = subprocess.run(
        [sys.executable, __file__, str(threads)], env=env, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize('threads', [1, 2])
def test_two_processes_end_in_the_same_weights(threads):
    first, second = answers(threads), answers(threads)
    assert list(first) == list(second) == list(kinds)
    assert [kind for kind in kinds if first[kind] != second[kind]] == []


def test_every_value_of_a_setting_is_among_the_kinds():
    used = [Config(**settings) for settings in kinds.values()]
    for name in ('encoder', 'similarity', 'loss', 'schedule', 'precision'):
        assert {getattr(c, name) for c in used} >= set(choices[name]) - {'popularity'}, name
    for name in ('deal', 'use_time'):
        assert {getattr(c, name) for c in used} == {False, True}
    for name in ('head_width', 'n_uid', 'pair_dropout'):
        assert {getattr(c, name) > 0 for c in used} == {False, True}
    assert {c.share == 1 for c in used} == {False, True}


# -- why: no sum whose order is left to the threads --


class InOrder(TorchDispatchMode):
    "Refuses to add into rows that repeat by index: torch does that with atomic adds, in whatever order the threads arrive."

    adding = (torch.ops.aten.index_put, torch.ops.aten.index_put_, torch.ops.aten._index_put_impl_)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket in self.adding and (args[3] if len(args) > 3 else kwargs.get('accumulate', False)):
            self.check(args[1])
        if func.overloadpacket in (torch.ops.aten.put, torch.ops.aten.put_) and (
            args[3] if len(args) > 3 else kwargs.get('accumulate', False)
        ):
            self.check([args[1]])
        return func(*args, **kwargs)

    def check(self, indices):
        indices = [i for i in indices if i is not None]
        if any(i.dtype == torch.bool for i in indices):
            return  # a mask names a row once
        rows = torch.stack([i.flatten() for i in torch.broadcast_tensors(*indices)], 1)
        if len(rows.unique(dim=0)) < len(rows):
            raise AssertionError(
                f'a gradient is added by index into rows that repeat, {len(rows):,} of them; take the rows with encoders.look_up'
            )


@pytest.mark.parametrize('kind', kinds)
def test_no_gradient_is_added_by_index_into_rows_that_repeat(kind):
    with InOrder():
        trained(kinds[kind] | dict(dim=8, n_negatives=8, embedder_negatives=8), world(24, 30, 12), 12)


def test_the_guard_sees_the_fault():
    table, rows = torch.randn(4, 2, requires_grad=True), torch.tensor([1, 3, 1])
    for taken in (
        table[[0, 2]],
        table[torch.tensor([True, False, True, False])],
        torch.nn.functional.embedding(rows, table),
    ):
        with InOrder():
            taken.sum().backward()
    with pytest.raises(AssertionError, match='rows that repeat, 3 of them'), InOrder():
        table[rows].sum().backward()


if __name__ == '__main__':
    torch.set_num_threads(int(sys.argv[1]))
    print(json.dumps({kind: trained(settings, world(72, 3706, 200), 24) for kind, settings in kinds.items()}))
