"Stage 1: every form of its loop against plain integers, exactly k' under any order of rows, and any number of threads at once."

import ctypes
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from molrec.base.errors import ConfigError
from molrec.base.native import compiler
from molrec.embeddings.quantize import Rows, quantize
from molrec.search import exact_threshold, stage1
from molrec.search.exact_threshold import exact_rows
from molrec.search.scan import block_scores
from molrec.search.scan_lists import scan_source
from molrec.search.scan_loops import dense_native, forms, kinds, scan_library
from molrec.search.stage1 import Stage1

needs_compiler = pytest.mark.skipif(not compiler(), reason='there is no C compiler on this machine')
bytes_of = dict(fp32=4, bf16=2, int8=1)


def library_of(rows, form):
    try:
        return scan_library(rows, form)
    except ConfigError:
        pytest.skip(f'this processor has no {form}')


def codes(n, width, storage, seed=0):
    "Rows that use the whole range of their storage, the largest codes side by side."
    draw = torch.Generator().manual_seed(seed)
    if storage != 'int8':
        return quantize(torch.randn(n, width, generator=draw), storage)
    values = torch.randint(-127, 128, (n, width), dtype=torch.int8, generator=draw)
    values[::3], values[1::5] = 127, -127
    return Rows(values, torch.rand(n, generator=draw) + 0.5, 'int8')


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
            if storage == 'int8':
                assert torch.equal(got, true)
            else:
                torch.testing.assert_close(got, true, rtol=1e-4, atol=1e-4)


@needs_compiler
def test_a_form_is_forced_by_the_environment_or_refused(monkeypatch):
    rows = codes(9, 64, 'int8')
    monkeypatch.setenv('MOLREC_SCAN', 'plain')
    assert forms[scan_library(rows).form()] == 'plain'
    monkeypatch.setenv('MOLREC_SCAN', 'sse9')
    with pytest.raises(ConfigError, match="got 'sse9', wanted one of auto, plain"):
        Stage1(rows)
    monkeypatch.setenv('MOLREC_SCAN', 'neon' if forms[scan_library(rows, 'auto').form()] != 'neon' else 'avx2')
    with pytest.raises(ConfigError, match='no such loop here'):
        Stage1(rows)


targets = [
    ('avx512', 'sapphirerapids'),
    ('avx512', 'icelake-server'),
    ('avx512', 'skylake-avx512'),
    ('avxvnni', 'alderlake'),
    ('avxvnni', 'icelake-server'),
    ('avx2', 'haswell'),
]


@pytest.mark.parametrize('form, target', targets)
def test_every_form_compiles_for_its_processors(form, target, tmp_path):
    gcc = shutil.which('gcc')
    said = gcc and subprocess.run([gcc, '-dumpmachine'], capture_output=True, text=True).stdout
    if not said or 'x86_64' not in said:
        pytest.skip('there is no gcc for x86-64 here')
    for kind in kinds.values():
        words = [
            gcc,
            f'-march={target}',
            '-O1',
            '-fno-strict-aliasing',
            '-Werror=incompatible-pointer-types',
            '-c',
            '-x',
            'c',
            '-',
            '-o',
            tmp_path / 'loop.o',
        ]
        done = subprocess.run(
            [*words, '-DW=5', f'-DKIND={kind}', f'-DFORM={forms.index(form)}'],
            input=scan_source,
            capture_output=True,
            text=True,
        )
        assert not done.returncode, done.stderr[:500]


arm_main = r"""
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
"""


@pytest.mark.parametrize('storage', kinds)
def test_arm_gives_the_same_answers_in_an_emulator(storage, tmp_path):
    cross, emulator = (
        shutil.which('aarch64-linux-gnu-gcc'),
        shutil.which('qemu-aarch64') or shutil.which('qemu-aarch64-static'),
    )
    if not cross or not emulator:
        pytest.skip('needs a compiler for ARM and an emulator: apt-get install gcc-aarch64-linux-gnu qemu-user')
    width, N, k = 20, 401, 30
    words = [
        cross,
        '-O2',
        '-fno-strict-aliasing',
        '-march=armv8.2-a+dotprod',
        '-static',
        '-x',
        'c',
        '-',
        '-o',
        tmp_path / 'loop',
        '-lm',
    ]
    subprocess.run(
        [*words, f'-DW={width * bytes_of[storage] // 4}', f'-DKIND={kinds[storage]}', '-DFORM=0'],
        input=scan_source + arm_main,
        text=True,
        check=True,
    )
    for B in (1, 3, 4, 21):
        rows, q = codes(N, width, storage), codes(B, width, storage, seed=1)
        scales = np.ones(N, np.float32) if rows.scales is None else rows.scales.numpy()
        given = [
            np.array([N, B, k]),
            *(t.values.contiguous().view(torch.uint8).numpy() for t in (rows,)),
            scales,
            q.values.contiguous().view(torch.uint8).numpy(),
        ]
        (tmp_path / 'in').write_bytes(b''.join(a.tobytes() for a in given))
        subprocess.run([emulator, tmp_path / 'loop', tmp_path / 'in', tmp_path / 'out'], check=True)
        out = (tmp_path / 'out').read_bytes()
        scores = torch.from_numpy(np.frombuffer(out, np.float32, B * N).copy()).view(B, N)
        best = torch.from_numpy(np.frombuffer(out, np.int32, B * k, 4 * B * N).copy()).view(B, k)
        if storage == 'int8':
            assert torch.equal(scores, block_scores(q, rows)) and torch.equal(best, exact_rows(q, rows, None, k).rows)
        else:
            torch.testing.assert_close(scores, block_scores(q, rows), rtol=1e-4, atol=1e-4)


# Instructions that few processors have, in plain C; what is around them is the code that such a processor runs.
spelled_out = r"""
#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#define AS(type, x, n) type x##s[n]; memcpy(x##s, &x, sizeof x)
#define DPBUSD(name, reg, n) static reg name(reg a, reg x, reg q) { AS(int32_t, a, n); AS(uint8_t, x, 4*n); AS(int8_t, q, 4*n); \
    for (int i = 0; i < n; i++) for (int j = 0; j < 4; j++) as[i] += xs[4*i + j]*qs[4*i + j]; \
    memcpy(&a, as, sizeof a); return a; }
DPBUSD(dpbusd_512, __m512i, 16)
DPBUSD(dpbusd_256, __m256i, 8)
static __m512i madd_512(__m512i x, __m512i q) { AS(int16_t, x, 32); AS(int16_t, q, 32); int32_t out[16];
    for (int i = 0; i < 16; i++) out[i] = xs[2*i]*qs[2*i] + xs[2*i + 1]*qs[2*i + 1];
    memcpy(&x, out, sizeof x); return x; }
static __m512 dpbf16_512(__m512 a, __m512bh x, __m512bh q) { AS(float, a, 16); AS(uint16_t, x, 32); AS(uint16_t, q, 32);
    for (int i = 0; i < 32; i++) { uint32_t u = (uint32_t)xs[i] << 16, v = (uint32_t)qs[i] << 16; float f, g; memcpy(&f, &u, 4); memcpy(&g, &v, 4); as[i/2] += f*g; }
    memcpy(&a, as, sizeof a); return a; }
static __mmask16 cmp_512(__m512 x, __m512 y, int how) { AS(float, x, 16); AS(float, y, 16); uint32_t out = 0;
    for (int i = 0; i < 16; i++) out |= (uint32_t)(how == _CMP_GE_OQ ? xs[i] >= ys[i] : how == _CMP_GT_OQ ? xs[i] > ys[i] : 1/0) << i;
    return out; }
#define _mm512_dpbusd_epi32 dpbusd_512
#define _mm256_dpbusd_epi32 dpbusd_256
#define _mm256_dpbusd_avx_epi32 dpbusd_256
#define _mm512_madd_epi16 madd_512
#define _mm512_dpbf16_ps dpbf16_512
#undef _mm512_cmp_ps_mask
#define _mm512_cmp_ps_mask cmp_512
"""
wide = ('F', 'BW', 'VL')
lacking = {'avx512 with VNNI and BF16': (5, (*wide, 'VNNI', 'BF16')), 'avx512 alone': (5, wide), 'avxvnni': (4, ())}


@needs_compiler
@pytest.mark.parametrize('name', lacking)
@pytest.mark.parametrize('storage', kinds)
def test_forms_for_other_processors_run_with_their_instructions_spelled_out(name, storage, tmp_path, monkeypatch):
    "The whole of stage 1 in the form that a wider processor would take."
    gcc, (form, has) = shutil.which('gcc'), lacking[name]
    if (
        not gcc
        or 'avx2' not in torch.backends.cpu.get_cpu_capability().lower()
        and 'avx512' not in torch.backends.cpu.get_cpu_capability().lower()
    ):
        pytest.skip('needs gcc and a processor with AVX2')
    if form == 4 and storage != 'int8':
        pytest.skip('a form of int8 alone differs')
    defined = ''.join(f'#define __AVX512{part}__ 1\n' for part in has) or '#define __AVXVNNI__ 1\n'
    rows = codes(9000, 20, storage)
    words = [
        gcc,
        '-mavx2',
        '-mfma',
        '-O2',
        '-fno-strict-aliasing',
        '-Wno-psabi',
        '-shared',
        '-fPIC',
        '-x',
        'c',
        '-',
        '-o',
        tmp_path / 'loop.so',
        '-lm',
    ]
    macros = [f'-DW={20 * bytes_of[storage] // 4}', f'-DKIND={kinds[storage]}', f'-DFORM={form}']
    done = subprocess.run([*words, *macros], input=spelled_out + defined + scan_source, capture_output=True, text=True)
    assert not done.returncode, done.stderr[:800]
    library = ctypes.CDLL(str(tmp_path / 'loop.so'))
    assert library.form() == form
    monkeypatch.setattr(stage1, 'scan_library', lambda rows, form=None: library)
    for B in (1, 2, 5, 9, 70):
        q = codes(B, 20, storage, seed=1)
        got, true = dense_native(library, q, rows.select(slice(0, 777))), block_scores(q, rows.select(slice(0, 777)))
        if storage == 'int8':
            assert torch.equal(got, true)
        else:
            torch.testing.assert_close(got, true, rtol=1e-4, atol=1e-4)
        queries = torch.randn(B, 20, generator=torch.Generator().manual_seed(B))
        found = Stage1(rows, impl='native').candidates(queries, 300)
        best = exact_rows(quantize(queries, storage), rows, None, 300)
        if storage == 'int8':
            assert torch.equal(found.rows, best.rows)
        else:
            assert (found.count == 300).all() and sum(
                np.isin(a, b).sum() for a, b in zip(found.rows, best.rows)
            ) >= 299 * B


# -- exactly k' --

ways = pytest.mark.parametrize('impl', ['torch', pytest.param('native', marks=needs_compiler)])


def orders(n=20_000, width=16):
    "The same rows by chance, by rising score, by falling score; and rows of few distinct scores."
    rows = quantize(torch.randn(n, width, generator=torch.Generator().manual_seed(0)))
    query = torch.randn(1, width, generator=torch.Generator().manual_seed(1))
    by = block_scores(quantize(query), rows)[0].argsort()
    return query, dict(
        chance=rows, rising=rows.select(by), falling=rows.select(by.flip(0)), repeated=rows.select(torch.arange(n) % 7)
    )


@ways
@pytest.mark.parametrize('order', ['chance', 'rising', 'falling', 'repeated'])
@pytest.mark.parametrize('k', [1, 100, 3000, 19_999, 20_000])
def test_exactly_the_best_come_back_whatever_the_order(impl, order, k):
    query, tables = orders()
    rows, ids = tables[order], torch.randperm(20_000, generator=torch.Generator().manual_seed(2))
    queries = torch.cat([query, -query, query.roll(1, 1)])
    for given in (None, ids):
        found = Stage1(rows, given, impl=impl).candidates(queries, k)
        assert found.count.tolist() == [k] * 3 and torch.equal(
            found.rows, exact_rows(quantize(queries), rows, None, k, given).rows
        )


@ways
@pytest.mark.parametrize('share', [2, 3, 9])
def test_masks_and_what_is_wanted_on_top_are_exact(impl, share):
    query, tables = orders()
    rows, allow, extra = tables['chance'], torch.arange(20_000) % share == 1, torch.tensor([0, 5, 70])
    queries = torch.cat([query, -query, query.roll(1, 1)])
    found = Stage1(rows, impl=impl).candidates(queries, 50, allow, extra)
    for b, k in enumerate((50, 55, 120)):
        true = exact_rows(quantize(queries[b : b + 1]), rows, allow, k).rows[0]
        assert found.count[b] == k and torch.equal(found.rows[b, :k], true) and (found.rows[b, k:] == -1).all()


@ways
def test_a_bound_that_is_too_high_only_costs_time(impl, monkeypatch):
    query, tables = orders()
    queries = torch.cat([query, -query])
    true = Stage1(tables['chance'], impl=impl).candidates(queries, 500)
    monkeypatch.setattr(stage1, 'hint_rank', lambda most, rate: 1)
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
    monkeypatch.setattr(exact_threshold, 'list_bytes', 1)
    again = Stage1(rows).candidates(queries, 80)
    assert torch.equal(whole.rows, again.rows) and torch.equal(whole.count, again.count)


@ways
def test_eight_threads_with_requests_of_all_sizes_give_the_lists_of_one(impl):
    query, tables = orders()
    stage, allow = Stage1(tables['chance'], impl=impl), torch.arange(20_000) % 3 > 0
    before = dict(vars(stage))
    requests = [
        (torch.randn(B, 16, generator=torch.Generator().manual_seed(B)), k, mask)
        for B in (1, 3, 9, 33)
        for k in (1, 200, 5000)
        for mask in (None, allow)
    ]

    def ask(request):
        return stage.candidates(*request).rows

    alone = [ask(r) for r in requests]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert all(torch.equal(a, b) for a, b in zip(alone, pool.map(ask, requests)))
    assert vars(stage).keys() == before.keys() and all(vars(stage)[k] is v for k, v in before.items())
