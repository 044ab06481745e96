"Every Triton kernel in the interpreter: right, within its bounds, and the same whatever the order of its programs; and what the compilers make of it."

import importlib
import os
from unittest.mock import patch

import numpy as np
import pytest
import torch

ON_GPU = torch.cuda.is_available()
pytest.importorskip('triton', reason='Triton exists for Linux only')
with patch.dict(os.environ):
    from molrec.base.errors import ConfigError
    from molrec.bench.kernel_bounds import pages
    from molrec.kernels.backend import Tuned, interpret
    from molrec.kernels.resources import resources
    from molrec.kernels.roofline import gpus

    if not ON_GPU:
        interpret()
    import _kernels_without_care as careless  # here and not later: its Triton must be the one that `Hostile` watches
    from triton.runtime import interpreter

    modules = {name: importlib.import_module(f'molrec.kernels.{name}') for name in pages}

without_gpu = pytest.mark.skipif(ON_GPU, reason='the interpreter is switched off where there is a GPU')
CASES = [(name, label) for name, module in modules.items() for label in module.cases()]
every_case = pytest.mark.parametrize('name, label', CASES, ids=[f'{n}-{l}' for n, l in CASES])


@pytest.fixture(autouse=True)
def interpreter_on(monkeypatch):
    if not ON_GPU:
        monkeypatch.setenv('TRITON_INTERPRET', '1')


# -- agreement --


def close(got, wanted, tolerance) -> None:
    "Shapes and dtypes too; NaN, infinities and whole numbers have to be equal."
    assert got.shape == wanted.shape and got.dtype == wanted.dtype
    if got.is_floating_point():
        torch.testing.assert_close(
            got.detach().float(), wanted.detach().float(), rtol=0, atol=tolerance, equal_nan=True
        )
    else:
        assert torch.equal(got, wanted)


@every_case
def test_a_kernel_agrees_with_its_reference(name, label):
    outputs, references, tolerances = modules[name].cases()[label]()
    assert len(outputs) == len(references) == len(tolerances) > 0
    for got, wanted, tolerance in zip(outputs, references, tolerances):
        close(got, wanted, tolerance)


# -- bounds and order --

GUARD = 256  # elements on either side


def poison(dtype: torch.dtype):
    "What memory that belongs to nobody holds: NaN where it can, so that reading it shows."
    return torch.nan if dtype.is_floating_point else True if dtype == torch.bool else 113


def between_guards(t: torch.Tensor):
    "A copy of `t`, strides and all, in the middle of poisoned memory: the buffer, and the copy."
    span = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride())) if t.numel() else 0
    buffer = torch.full((span + 2 * GUARD,), 0, dtype=torch.float32).to(t.dtype)
    buffer.fill_(poison(t.dtype))
    copy = buffer.as_strided(t.shape, t.stride(), GUARD)
    copy.copy_(t)
    return buffer, copy


def untouched(buffer: torch.Tensor, copy: torch.Tensor) -> bool:
    "Whether all of the buffer outside of the copy is still poison, byte for byte."
    inside = torch.zeros(len(buffer), dtype=torch.bool)
    inside.as_strided(copy.shape, copy.stride(), GUARD).fill_(True)
    fresh = torch.full_like(buffer, 0).fill_(poison(buffer.dtype))
    left, right = (
        b[~inside].view(torch.uint8) if b.element_size() == 1 else b[~inside].contiguous().view(torch.uint8)
        for b in (buffer, fresh)
    )
    return torch.equal(left, right)


class Hostile:
    "Launches kernels with every tensor between guards and the programs in another order."

    def __init__(self, seed: int):
        self.draw, self.launches, self.call = np.random.default_rng(seed), 0, interpreter.GridExecutor.__call__

    def order(self, grid):
        places = [(x, y, z) for x in range(grid[0]) for y in range(grid[1]) for z in range(grid[2])]
        return dict(zip(places, (places[i] for i in self.draw.permutation(len(places)))))

    def launch(self, executor, *args, **kwargs):
        self.launches += 1
        guarded = {id(t): (t, *between_guards(t)) for t in [*args, *kwargs.values()] if isinstance(t, torch.Tensor)}

        def swap(a):
            return guarded[id(a)][2] if isinstance(a, torch.Tensor) else a

        place, builder = interpreter.interpreter_builder.set_grid_idx, interpreter.interpreter_builder
        order = {}

        def elsewhere(x, y, z):
            if not order:
                order.update(self.order(builder.grid_dim))
            place(*order[x, y, z])

        with patch.object(builder, 'set_grid_idx', elsewhere):
            self.call(executor, *map(swap, args), **{k: swap(v) for k, v in kwargs.items()})
        for t, buffer, copy in guarded.values():
            assert untouched(buffer, copy), f'a program wrote outside of an argument of shape {tuple(t.shape)}'
            t.data.copy_(copy)  # not by autograd: inputs may be views of leaves


@without_gpu
@pytest.mark.parametrize('seed', [0, 1])
@every_case
def test_neither_order_nor_surroundings_matter(name, label, seed, monkeypatch):
    hostile, empty = Hostile(seed), torch.empty

    def prefilled(*args, **kwargs):
        out = empty(*args, **kwargs)
        return out.fill_(poison(out.dtype)) if out.dtype not in (torch.float8_e4m3fn,) else out

    monkeypatch.setattr(torch, 'empty', prefilled)
    monkeypatch.setattr(
        interpreter.GridExecutor, '__call__', lambda executor, *a, **k: hostile.launch(executor, *a, **k)
    )
    outputs, references, tolerances = modules[name].cases()[label]()
    for got, wanted, tolerance in zip(outputs, references, tolerances):
        close(got, wanted, tolerance)


@without_gpu
def test_the_hostile_launcher_sees_what_it_should():
    "A kernel without a mask writes beyond its output; one that reads beyond its input meets NaN; one that counts on order gives it away."
    with pytest.raises(AssertionError, match='wrote outside'):
        hostile_launch(careless.no_mask, torch.zeros(10), 10)
    out = torch.zeros(1)
    hostile_launch(careless.reads_beyond, torch.ones(5), out, 5)
    assert out.isnan().all()
    last = {float(hostile_launch(careless.last_wins, torch.zeros(1), 8, seed=s, grid=(8,))[0]) for s in range(6)}
    assert len(last) > 1


def hostile_launch(kernel, *args, seed=0, grid=(3,)):
    "Arguments after a launch by `Hostile`."
    hostile = Hostile(seed)
    assert isinstance(kernel, interpreter.InterpretedFunction), (
        'another Triton would run it without guards, and it writes where it should not'
    )
    with patch.object(
        interpreter.GridExecutor, '__call__', lambda executor, *a, **k: hostile.launch(executor, *a, **k)
    ):
        kernel[grid](*args)
    assert hostile.launches == 1
    return args


# -- machine code --


@pytest.fixture(scope='module')
def machine_code():
    "Every build of every page, compiled for three GPUs."
    return resources(*(m.__name__ for m in modules.values()))


def test_every_kernel_is_built_without_spills_and_with_its_tensor_cores(machine_code):
    wrong = machine_code[machine_code.faults != '']
    assert wrong.empty, wrong[['build', 'arch', 'faults']].to_string()
    assert set(machine_code.arch) == {g.arch for g in gpus.values()}


def test_every_page_has_builds_for_every_gpu(machine_code):
    for name, module in modules.items():
        rows = machine_code[machine_code.build.isin([b.name for b in module.builds])]
        assert set(rows.arch) == {g.arch for g in gpus.values()}, name


def test_the_recorded_table_is_that_of_the_kernels(machine_code):
    "reports/kernels/resources.csv is made from the same machine code."
    from pathlib import Path

    import pandas as pd

    recorded = pd.read_csv(Path(__file__).parents[2] / 'reports' / 'kernels' / 'resources.csv', keep_default_na=False)
    pd.testing.assert_frame_equal(
        recorded[['build', 'arch', 'registers', 'spills', 'shared_bytes']],
        machine_code[['build', 'arch', 'registers', 'spills', 'shared_bytes']],
        check_dtype=False,
    )


# -- settings --

TABLES = [(name, k) for name, m in modules.items() for k, v in vars(m).items() if isinstance(v, Tuned)]


@pytest.mark.parametrize('name, table', TABLES, ids=[f'{n}-{k}' for n, k in TABLES])
def test_every_setting_has_a_predicted_time(name, table):
    "For each architecture; and what the launcher would take is among them."
    tuned = getattr(modules[name], table)
    assert set(tuned.configs) == {*(g.arch for g in gpus.values()), 'interpreter'}
    for arch in tuned.configs:
        assert all(c.get('num_warps', 4) in (1, 2, 4, 8, 16) for c in tuned.configs[arch])


# -- where they are used --

DEVICE = 'cuda' if ON_GPU else 'cpu'


def small_mol(**more):
    from molrec.similarities.mol import MoL

    torch.manual_seed(0)
    return MoL(10, 4, 2, 16, query_hidden=16, gate_hidden=32, **more).to(DEVICE)


@pytest.mark.parametrize('storage, most', [('int8', 0), ('fp8', 1), ('bf16', 1), ('fp32', 1)])
def test_stage_1_keeps_the_same_rows(storage, most):
    "int8 is exact. Elsewhere sums are rounded in another order, and the row of the sample that is the threshold may fall on its other side."
    from molrec.embeddings.quantize import quantize
    from molrec.search.stage1 import Stage1

    torch.manual_seed(0)
    corpus = torch.nn.functional.normalize(torch.randn(3000, 32), dim=1).to(DEVICE)
    rows, queries, allow = quantize(corpus, storage), corpus[:5] + 0.1, torch.arange(3000, device=DEVICE) % 3 > 0
    for mask in (None, allow):
        plain, kernel = (Stage1(rows, impl=impl).candidates(queries, 60, mask) for impl in ('torch', 'triton'))
        for a, b in zip(plain.rows.tolist(), kernel.rows.tolist()):
            assert len(set(a) ^ set(b)) - (-1 in set(a) ^ set(b)) <= most
        assert (kernel.count >= 60).all()


@pytest.mark.parametrize('storage', ['fp32', 'int8', 'compact-int8'])
def test_indexes_give_the_same_lists(storage):
    from molrec.search.h_indexer import HIndexer
    from molrec.search.index import BruteForce

    mol = small_mol().eval().requires_grad_(False)
    items, queries = torch.randn(300, 10, device=DEVICE), torch.randn(3, 10, device=DEVICE)
    for kind, more in ((BruteForce, {}), (HIndexer, dict(k_prime=40))):
        (_, plain), (_, kernel) = (
            kind.build(mol, items, impl=impl, storage=storage, **more).search(
                queries, 10, exclude=[torch.tensor([i]) for i in range(3)]
            )
            for impl in ('torch', 'triton')
        )
        assert torch.equal(plain, kernel)


def test_training_gets_the_same_loss_and_gradients():
    from molrec.training.losses import draw_negatives, sampled_loss

    mol = small_mol(mix_dropout=0.0, item_dropout=0.0).train()
    queries, items = (torch.randn(n, 10, device=DEVICE, requires_grad=True) for n in (9, 40))
    targets, negatives = torch.randint(40, (9,), device=DEVICE), draw_negatives(9, 40, 12, 4).to(DEVICE)
    both = []
    for impl in ('torch', 'triton'):
        loss = sampled_loss(mol, queries, items, targets, negatives, 4, impl=impl)
        both.append((loss, *torch.autograd.grad(loss, [queries, items, *mol.parameters()])))
    for plain, kernel in zip(*both):
        torch.testing.assert_close(kernel, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('clock', ['next', 'own', 'none', 'off'])
def test_hstu_gets_the_same_queries_and_gradients(clock):
    "With the time until the next event, until the present one, no timestamps, no bias by time."
    from molrec.data.packed import PackedBatch
    from molrec.encoders.hstu import HSTU

    torch.manual_seed(0)
    lengths, more = [5, 5, 1, 18], dict(next_time=clock == 'next', use_time=clock != 'off')
    offsets, T = torch.tensor([0, *lengths]).cumsum(0), sum(lengths)
    times = torch.cat([torch.randint(10**7, (n,)).sort().values for n in lengths])
    given = (
        offsets,
        torch.randint(30, (T,)),
        None,
        *((None, None) if clock == 'none' else (times, times + torch.randint(10**6, (T,)))),
    )
    batch = PackedBatch(torch.arange(4), *given).to(DEVICE)
    models = [
        HSTU(30, 12, max_length=20, n_blocks=2, n_heads=2, head_dim=6, dropout=0.0, impl=impl, **more).to(DEVICE)
        for impl in ('torch', 'triton')
    ]
    models[1].load_state_dict(models[0].state_dict())
    used = [n for n, _ in models[0].named_parameters() if clock != 'none' or 'elapsed' not in n]
    slopes, both = torch.randn(T, 12).to(DEVICE), []
    for model in models:
        out = model(batch)
        both.append(
            (out, *torch.autograd.grad((out * slopes).sum(), [p for n, p in model.named_parameters() if n in used]))
        )
    assert all(t.abs().max() > 0 for t in both[0])
    for plain, kernel in zip(*both):
        close(kernel, plain, 5e-5 * float(plain.detach().abs().max()))


@pytest.mark.skipif(not ON_GPU, reason='needs a GPU')
def test_hstu_takes_the_kernel_on_a_gpu_unasked(monkeypatch):
    from molrec.encoders import hstu_attention as hstu

    asked, kernel = [], hstu.attention_by_kernel
    monkeypatch.setattr(hstu, 'attention_by_kernel', lambda *given: asked.append(1) or kernel(*given))
    hstu.hstu_attention(
        *(torch.randn(5, 2, 8, device=DEVICE) for _ in range(3)),
        torch.randn(19, device=DEVICE),
        None,
        hstu.Clock(torch.tensor([0, 5], device=DEVICE)),
        10,
    )
    assert asked == [1]


def test_a_loss_without_a_kernel_is_refused():
    from molrec.similarities.dot import Dot
    from molrec.training.losses import draw_negatives, sampled_loss

    x = torch.randn(9, 10)
    with pytest.raises(ConfigError, match='impl: no kernel for Dot'):
        sampled_loss(Dot(), x, x, torch.arange(9), draw_negatives(9, 9, 4, 3), 3, impl='triton')


@without_gpu
def test_triton_without_a_gpu_says_what_to_do(monkeypatch):
    from molrec.kernels.scan import sample_threshold

    monkeypatch.setenv('TRITON_INTERPRET', '0')
    with pytest.raises(ConfigError, match='TRITON_INTERPRET=1 before Python starts'):
        sample_threshold(torch.zeros(1, 4), 2, impl='triton')
