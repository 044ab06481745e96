"MoL's compiled loop with registers of 4 and 8 lanes: the torch form's scores, the same bits wherever a pair is scored; ARM's form in an emulator."

import shutil
import subprocess

import numpy as np
import pytest
import torch

from molrec.base.native import build
from molrec.search import mol_loops
from molrec.search.candidates import score_range, score_rows
from molrec.search.item_table import ItemTable
from molrec.search.mol_loops import given, mol_library
from molrec.search.mol_source import mol_source
from molrec.similarities.mol import MoL

D, N, B = 10, 75, 3
shapes = [
    dict(n_query=8, n_item=4, width=16, gate_hidden=32),
    dict(n_query=3, n_item=5, width=6, gate_hidden=20),
    dict(n_query=9, n_item=2, width=34, gates='query+item'),
]
storages = ('fp32', 'bf16', 'int8')


def case(shape, storage):
    "A model with a gate that decides, its table, and the query side."
    torch.manual_seed(0)
    mol = MoL(D, **shape).eval().requires_grad_(False)
    return mol, ItemTable.build(mol, torch.randn(N, D), storage), mol.query_side(torch.randn(B, D))


def constants(mol, storage):
    return dict(
        P_Q=mol.n_query,
        P_X=mol.n_item,
        D=mol.width,
        H=len(mol.gate_pair[0].bias) if mol.gate_pair else 0,
        KS=1,
        STORE=storages.index(storage),
    )


@pytest.fixture(params=[None, 4, 8], ids=lambda lanes: f'{lanes} lanes' if lanes else 'own')
def lanes(request, monkeypatch):
    "This processor's own loop; then with registers of other processors, which the compiler puts together."

    wide = {} if request.param is None else dict(LANES=request.param)
    monkeypatch.setattr(mol_loops, 'build', lambda name, source, **given: build('mol', source, **wide, **given))
    if mol_library(*case(shapes[0], 'fp32')[:2], 'fp32') is None:
        pytest.skip('no compiler, or no such loop here')
    return request.param


@pytest.mark.parametrize('storage', storages)
@pytest.mark.parametrize('shape', shapes)
def test_scores_are_torchs_and_the_same_bits_wherever_a_pair_is_scored(shape, storage, lanes):
    mol, table, q = case(shape, storage)
    whole = score_range(mol, q, table, 0, N, impl='native')
    torch.testing.assert_close(whole, score_range(mol, q, table, 0, N, impl='torch'), rtol=0, atol=2e-4)
    for n in (1, 2, 15, 16, 17, 33, N):
        rows = torch.stack([torch.randperm(N)[:n] for _ in range(B)]).int()
        assert torch.equal(
            score_rows(mol, q, table, rows, torch.full((B,), n), impl='native'), whole.gather(1, rows.long())
        )
        assert torch.equal(score_range(mol, q, table, N - n, N, impl='native'), whole[:, N - n :])
        one = tuple(t[1:2] for t in q)
        assert torch.equal(score_range(mol, one, table, 0, n, impl='native'), whole[1:2, :n])


def test_bf16_is_answered_everywhere(lanes):
    mol, table, q = case(shapes[0], 'bf16')
    torch.testing.assert_close(
        score_range(mol, q, table, 0, N, impl='native', arithmetic='bf16'),
        score_range(mol, q, table, 0, N, impl='torch'),
        rtol=0,
        atol=0.2,
    )


arm_main = r"""
#include <stdio.h>
#include <stdlib.h>
static const void *next(FILE *in) {         // a block: its bytes, then they themselves
    int64_t n;
    if (fread(&n, 8, 1, in) != 1) exit(1);
    void *block = malloc(n + 64);
    if (n && fread(block, 1, n, in) != n) exit(1);
    return block;
}
int main(int n_args, char **args) {
    FILE *in = fopen(args[1], "rb"), *out = fopen(args[2], "wb");
    const int64_t *head = next(in), N = head[0], B = head[1];
    const void *x[12];
    for (int i = 0; i < 12; i++) x[i] = next(in);
    float *scores = malloc(4*B*N), *listed = malloc(4*B*N);
    score_range(x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7], x[8], x[9], 0, N, 0, B, N, scores);
    score_rows(x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7], x[8], x[9], x[10], N, x[11], B, N, 0, 1, listed);
    fwrite(scores, 4, B*N, out); fwrite(listed, 4, B*N, out);
    return fclose(out) || LANES != 4;
}
"""


def blocks(*values):
    "Arrays, each after its number of bytes."
    arrays = [
        np.empty(0, np.uint8) if v is None else np.ascontiguousarray(v.contiguous().view(torch.uint8).numpy())
        for v in values
    ]
    return b''.join(np.int64(a.nbytes).tobytes() + a.tobytes() for a in arrays)


@pytest.mark.parametrize('storage', storages)
@pytest.mark.parametrize('shape', shapes)
def test_arm_gives_the_same_scores_in_an_emulator(shape, storage, tmp_path):
    cross, emulator = (
        shutil.which('aarch64-linux-gnu-gcc'),
        shutil.which('qemu-aarch64') or shutil.which('qemu-aarch64-static'),
    )
    if not cross or not emulator:
        pytest.skip('needs a compiler for ARM and an emulator: apt-get install gcc-aarch64-linux-gnu qemu-user')
    mol, table, q = case(shape, storage)
    defined = [f'-D{k}={v}' for k, v in constants(mol, storage).items()]
    options = '-O3 -fno-math-errno -fno-trapping-math -static -x c -'.split()
    words = [cross, *options, '-o', tmp_path / 'loop', *defined, '-lm']
    subprocess.run(words, input=mol_source + arm_main, text=True, check=True)
    rows = torch.stack([torch.randperm(N) for _ in range(B)]).int()
    (tmp_path / 'in').write_bytes(
        blocks(torch.tensor([N, B]), *given(mol, q, table.parts, 'fp32'), rows, torch.full((B,), N))
    )
    subprocess.run([emulator, tmp_path / 'loop', tmp_path / 'in', tmp_path / 'out'], check=True)
    scores, listed = torch.from_numpy(np.fromfile(tmp_path / 'out', np.float32)).view(2, B, N)
    torch.testing.assert_close(scores, score_range(mol, q, table, 0, N, impl='torch'), rtol=0, atol=2e-4)
    assert torch.equal(listed, scores.gather(1, rows.long()))


@pytest.mark.parametrize('target', ['haswell', 'alderlake', 'skylake-avx512', 'sapphirerapids'])
def test_it_compiles_for_its_processors(target, tmp_path):
    gcc = shutil.which('gcc')
    said = gcc and subprocess.run([gcc, '-dumpmachine'], capture_output=True, text=True).stdout
    if not said or 'x86_64' not in said:
        pytest.skip('there is no gcc for x86-64 here')
    for KS in (1, 2)[: 1 + (target == 'sapphirerapids')]:
        for store in range(3):
            options = '-O1 -Wno-psabi -c -x c - -DP_Q=3 -DP_X=5 -DD=6 -DH=20'.split()
            words = [gcc, f'-march={target}', *options, '-o', tmp_path / 'loop.o']
            done = subprocess.run(
                [*words, f'-DKS={KS}', f'-DSTORE={store}'], input=mol_source, capture_output=True, text=True
            )
            assert not done.returncode, done.stderr[:500]
