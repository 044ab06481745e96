"Stage 1: every form of its loop against plain integers, exactly k' under any order of rows, and any number of threads at once."
import shutil, subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from molrec import h_indexer
from molrec.core import ConfigError
from molrec.h_indexer import Stage1, block_scores, dense_native, exact_rows, forms, kinds, scan_library, scan_source
from molrec.native import compiler
from molrec.quantize import Rows, quantize

needs_compiler = pytest.mark.skipif(not compiler(), reason='there is no C compiler on this machine')
bytes_of = dict(fp32=4, bf16=2, int8=1)


def library_of(rows, form):
    try: return scan_library(rows, form)
    except ConfigError: pytest.skip(f'this processor has no {form}')


def codes(n, width, storage, seed=0):
    "Rows that use the whole range of their storage, the largest codes side by side."
    draw = torch.Generator().manual_seed(seed)
    if storage != 'int8': return quantize(torch.randn(n, width, generator=draw), storage)
    values = torch.randint(-127, 128, (n, width), dtype=torch.int8, generator=draw)
    values[::3], values[1::5] = 127, -127
    return Rows(values, torch.rand(n, generator=draw) + .5, 'int8')


# -- the loop in its forms --

@needs_compiler
@pytest.mark.parametrize('form', forms[1:])
@pytest.mark.parametrize('storage', kinds)
@pytest.mark.parametrize('width', [4, 20, 64])
def test_every_form_gives_the_scores_of_plain_arithmetic(form, storage, width):
    library = library_of(codes(1, width, storage), form)
    assert forms[library.form()] == form
    for n in (1, 7, 385, 777):
        rows = codes(n, width, storage)
        for B in (1, 2, 5, 8, 9, 17, 70):
            q = codes(B, width, storage, seed=1)
            got, true = dense_native(library, q, rows), block_scores(q, rows)
            if storage == 'int8': assert torch.equal(got, true)
            else: torch.testing.assert_close(got, true, rtol=1e-4, atol=1e-4)


@needs_compiler
def test_a_form_is_forced_by_the_environment_or_refused(monkeypatch):
    rows = codes(9, 64, 'int8')
    monkeypatch.setenv('MOLREC_SCAN', 'plain')
    assert forms[scan_library(rows).form()] == 'plain'
    monkeypatch.setenv('MOLREC_SCAN', 'sse9')
    with pytest.raises(ConfigError, match="got 'sse9', wanted one of auto, plain"): Stage1(rows)
    monkeypatch.setenv('MOLREC_SCAN', 'neon' if forms[scan_library(rows, 'auto').form()] != 'neon' else 'avx2')
    with pytest.raises(ConfigError, match='no such loop here'): Stage1(rows)


targets = [('avx512', 'sapphirerapids'), ('avx512', 'icelake-server'), ('avx512', 'skylake-avx512'), ('avxvnni', 'alderlake'), ('avxvnni', 'icelake-server'), ('avx2', 'haswell')]

@pytest.mark.parametrize('form, target', targets)
def test_every_form_compiles_for_its_processors(form, target, tmp_path):
    gcc = shutil.which('gcc')
    said = gcc and subprocess.run([gcc, '-dumpmachine'], capture_output=True, text=True).stdout
    if not said or 'x86_64' not in said: pytest.skip('there is no gcc for x86-64 here')
    for kind in kinds.values():
        words = [gcc, f'-march={target}', '-O1', '-fno-strict-aliasing', '-Werror=incompatible-pointer-types', '-c', '-x', 'c', '-', '-o', tmp_path/'loop.o']
        done = subprocess.run([*words, '-DW=5', f'-DKIND={kind}', f'-DFORM={forms.index(form)}'], input=scan_source, capture_output=True, text=True)
        assert not done.returncode, done.stderr[:500]


arm_main = r'''
#include <stdio.h>
int main(int n_args, char **args) {
    int64_t head[3]; FILE *in = fopen(args[1], "rb"), *out = fopen(args[2], "wb");
    if (!in || !out || fread(head, 8, 3, in) != 3) return 1;
    int64_t N = head[0], B = head[1], k = head[2], count[B], wanted[B], room = 2*k + 8;
    uint32_t *rows = malloc(4*N*W), *q = malloc(4*B*W); float scale[N], t[B], *all = malloc(4*B*N);
    uint64_t *list = malloc(8*B*room); int32_t best[B*k];
    if (fread(rows, 4, N*W, in) != N*W || fread(scale, 4, N, in) != N || fread(q, 4, B*W, in) != B*W) return 1;
    for (int b = 0; b < B; b++) { count[b] = 0; wanted[b] = k; t[b] = -INFINITY; }
    if (dense(rows, scale, 0, N, q, B, all, N) || scan(rows, scale, 0, N, q, B, t, 0, 0, wanted, list, room, room, count)) return 2;
    cut(list, room, room, 1, count, B, 0, B, 0, wanted, best, k, count);
    fwrite(all, 4, B*N, out); fwrite(best, 4, B*k, out);
    return fclose(out) || form() != 2;
}
'''

@pytest.mark.parametrize('storage', kinds)
def test_arm_gives_the_same_answers_in_an_emulator(storage, tmp_path):
    cross, emulator = shutil.which('aarch64-linux-gnu-gcc'), shutil.which('qemu-aarch64') or shutil.which('qemu-aarch64-static')
    if not cross or not emulator: pytest.skip('needs a compiler for ARM and an emulator: apt-get install gcc-aarch64-linux-gnu qemu-user')
    width, N, k = 20, 401, 30
    words = [cross, '-O2', '-fno-strict-aliasing', '-march=armv8.2-a+dotprod', '-static', '-x', 'c', '-', '-o', tmp_path/'loop', '-lm']
    subprocess.run([*words, f'-DW={width*bytes_of[storage]//4}', f'-DKIND={kinds[storage]}', '-DFORM=0'], input=scan_source + arm_main, text=True, check=True)
    for B in (1, 3, 4, 21):
        rows, q = codes(N, width, storage), codes(B, width, storage, seed=1)
        scales = np.ones(N, np.float32) if rows.scales is None else rows.scales.numpy()
        given = [np.array([N, B, k]), *(t.values.contiguous().view(torch.uint8).numpy() for t in (rows,)), scales, q.values.contiguous().view(torch.uint8).numpy()]
        (tmp_path/'in').write_bytes(b''.join(a.tobytes() for a in given))
        subprocess.run([emulator, tmp_path/'loop', tmp_path/'in', tmp_path/'out'], check=True)
        out = (tmp_path/'out').read_bytes()
        scores = torch.from_numpy(np.frombuffer(out, np.float32, B*N).copy()).view(B, N)
        best = torch.from_numpy(np.frombuffer(out, np.int32, B*k, 4*B*N).copy()).view(B, k)
        if storage == 'int8': assert torch.equal(scores, block_scores(q, rows)) and torch.equal(best, exact_rows(q, rows, None, k).rows)
        else: torch.testing.assert_close(scores, block_scores(q, rows), rtol=1e-4, atol=1e-4)


# -- exactly k' --

ways = pytest.mark.parametrize('impl', ['torch', pytest.param('native', marks=needs_compiler)])


def orders(n=20_000, width=16):
    "The same rows by chance, by rising score, by falling score; and rows of few distinct scores."
    rows = quantize(torch.randn(n, width, generator=torch.Generator().manual_seed(0)))
    query = torch.randn(1, width, generator=torch.Generator().manual_seed(1))
    by = block_scores(quantize(query), rows)[0].argsort()
    return query, dict(chance=rows, rising=rows.select(by), falling=rows.select(by.flip(0)), repeated=rows.select(torch.arange(n) % 7))


@ways
@pytest.mark.parametrize('order', ['chance', 'rising', 'falling', 'repeated'])
@pytest.mark.parametrize('k', [1, 100, 3000, 19_999, 20_000])
def test_exactly_the_best_come_back_whatever_the_order(impl, order, k):
    query, tables = orders()
    rows, ids = tables[order], torch.randperm(20_000, generator=torch.Generator().manual_seed(2))
    queries = torch.cat([query, -query, query.roll(1, 1)])
    for given in (None, ids):
        found = Stage1(rows, given, impl=impl).candidates(queries, k)
        assert found.count.tolist() == [k]*3 and torch.equal(found.rows, exact_rows(quantize(queries), rows, None, k, given).rows)


@ways
@pytest.mark.parametrize('share', [2, 3, 9])
def test_masks_and_what_is_wanted_on_top_are_exact(impl, share):
    query, tables = orders()
    rows, allow, extra = tables['chance'], torch.arange(20_000) % share == 1, torch.tensor([0, 5, 70])
    queries = torch.cat([query, -query, query.roll(1, 1)])
    found = Stage1(rows, impl=impl).candidates(queries, 50, allow, extra)
    for b, k in enumerate((50, 55, 120)):
        true = exact_rows(quantize(queries[b:b + 1]), rows, allow, k).rows[0]
        assert found.count[b] == k and torch.equal(found.rows[b, :k], true) and (found.rows[b, k:] == -1).all()


@ways
def test_a_bound_that_is_too_high_only_costs_time(impl, monkeypatch):
    query, tables = orders()
    queries = torch.cat([query, -query])
    true = Stage1(tables['chance'], impl=impl).candidates(queries, 500)
    monkeypatch.setattr(h_indexer, 'hint_rank', lambda most, rate: 1)
    found = Stage1(tables['chance'], impl=impl).candidates(queries, 500)
    assert found.again == 2 and torch.equal(found.rows, true.rows) and torch.equal(found.count, true.count)


@ways
@pytest.mark.parametrize('threshold', ['exact', 'sampled'])
def test_the_sampled_way_stays_and_keeps_at_least_as_many(impl, threshold):
    query, tables = orders()
    found = Stage1(tables['chance'], impl=impl, threshold=threshold).candidates(query, 400)
    best = exact_rows(quantize(query), tables['chance'], None, 400).rows[0]
    assert np.isin(best, found.rows[0]).all() and found.count[0] >= 400


@needs_compiler
def test_many_queries_in_batches_give_the_lists_of_one_batch(monkeypatch):
    rows, queries = orders()[1]['chance'], torch.randn(150, 16)
    whole = Stage1(rows).candidates(queries, 80)
    monkeypatch.setattr(h_indexer, 'list_bytes', 1)
    again = Stage1(rows).candidates(queries, 80)
    assert torch.equal(whole.rows, again.rows) and torch.equal(whole.count, again.count)


@ways
def test_eight_threads_with_requests_of_all_sizes_give_the_lists_of_one(impl):
    query, tables = orders()
    stage, allow = Stage1(tables['chance'], impl=impl), torch.arange(20_000) % 3 > 0
    before = dict(vars(stage))
    requests = [(torch.randn(B, 16, generator=torch.Generator().manual_seed(B)), k, mask) for B in (1, 3, 9, 33) for k in (1, 200, 5000) for mask in (None, allow)]
    def ask(request): return stage.candidates(*request).rows
    alone = [ask(r) for r in requests]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3): assert all(torch.equal(a, b) for a, b in zip(alone, pool.map(ask, requests)))
    assert vars(stage).keys() == before.keys() and all(vars(stage)[k] is v for k, v in before.items())
