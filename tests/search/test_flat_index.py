"The flat index gives exact search's answer, by proof, not by luck; from arrays of any kind, files and many threads."

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from molrec.base.errors import ConfigError, DataError
from molrec.base.native import compiler
from molrec.embeddings.quantize import quantize
from molrec.search.flat_index import FlatIndex, extremes, slack_of

ways = pytest.mark.parametrize(
    'impl',
    [
        'torch',
        pytest.param(
            'native', marks=pytest.mark.skipif(not compiler(), reason='there is no C compiler on this machine')
        ),
    ],
)


def corpus(look, n=4000, width=24):
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(n, width, generator=draw)
    if look == 'lengths':
        x *= 10.0 ** torch.randint(-6, 7, (n, 1), generator=draw)
    if look == 'close':
        x = x[:1] + 1e-4 * x
    if look == 'equal':
        x = x[torch.arange(n) % 3]
    if look == 'one_coordinate':
        x[:, 1:] *= 1e-3
    if look == 'zeros':
        x[::2] = 0
    return x


def truth(vectors, queries, k):
    "Sorted sums in fp64, each row by itself: a matrix product may round equal rows differently."
    scores = torch.stack([(vectors.double() * q).sum(1) for q in queries.double()])
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :k]


@ways
@pytest.mark.parametrize('look', ['plain', 'lengths', 'close', 'equal', 'one_coordinate', 'zeros'])
def test_the_answer_is_that_of_exact_search(look, impl):
    x, q = corpus(look), torch.randn(7, 24)
    index = FlatIndex(x, impl=impl)
    for k in (1, 10, 700, 4000):
        assert torch.equal(index.search(q, k)[1], truth(x, q, k))


@pytest.mark.parametrize('look', ['plain', 'lengths', 'close', 'one_coordinate', 'zeros'])
@pytest.mark.parametrize('width', [1, 3, 24, 200])
def test_no_score_is_further_from_its_bytes_than_the_slack(look, width):
    "Every pair of these; the look is drawn anew for each width. What stage 1 ranks by is the product in fp32, so that is held."
    x, q = corpus(look, 500, width), corpus('lengths', 50, width)
    rows, asked = quantize(x), quantize(q)
    slack = slack_of(q.double(), asked.dequantize().double(), *extremes(x, rows))
    by_bytes = (asked.values.double() @ rows.values.double().T).float() * rows.scales
    said = by_bytes.double() * asked.scales.double()[:, None]
    assert ((q.double() @ x.double().T - said).abs() <= slack[:, None]).all()


def test_a_list_that_is_not_certain_is_looked_at_again():
    "One item is long, so the slack of all is large: the first look cannot be certain, the answer is exact all the same."
    x, q = corpus('plain'), torch.randn(5, 24)
    x[17] = 1e4 * x[17]
    index, looks = FlatIndex(x), []
    look = index.look
    index.look = lambda queries, k, k_prime: looks.append((len(queries), k_prime)) or look(queries, k, k_prime)
    assert torch.equal(index.search(q, 10)[1], truth(x, q, 10)) and len(looks) > 1 and looks[0] == (5, 84)


@pytest.mark.parametrize('width', [1, 2, 5, 63])
def test_widths_that_are_no_multiple_of_four(width):
    x, q = torch.randn(900, width), torch.randn(4, width)
    assert torch.equal(FlatIndex(x).search(q, 20)[1], truth(x, q, 20))


def test_ids_and_arrays_of_many_kinds():
    x, q = (
        np.random.default_rng(0).normal(size=(50, 8)),
        np.random.default_rng(1).normal(size=(2, 8)).astype(np.float16),
    )
    ids = np.arange(50)[::-1].astype(np.uint16) * 3
    scores, found = FlatIndex(x, ids).search(q, 60)
    assert (
        found.dtype == torch.int64
        and torch.equal(found[:, 50:], torch.full((2, 10), -1))
        and scores[:, 50:].eq(-torch.inf).all()
    )
    assert found[0, 0] == int(ids[(x @ q[0].astype(float)).argmax()])


def test_ties_go_to_the_lowest_ids():
    ids = torch.randperm(2000)
    assert FlatIndex(torch.ones(2000, 8), ids).search(torch.ones(1, 8), 30)[1].tolist() == [list(range(30))]


@pytest.mark.parametrize(
    'given, k, error, word',
    [
        (torch.zeros(3), 1, DataError, 'queries: torch.float32 of shape'),
        (torch.zeros(1, 7), 1, DataError, r'of shape \(n, 8\)'),
        (torch.full((1, 8), torch.nan), 1, DataError, 'row 0 has NaN'),
        (torch.full((1, 8), 1e30), 1, DataError, 'length'),
        (torch.zeros(1, 8), 0, ConfigError, 'k: got 0'),
    ],
)
def test_odd_calls_end_in_a_sentence(given, k, error, word):
    with pytest.raises(error, match=word):
        FlatIndex(torch.eye(8)).search(given, k)


@pytest.mark.parametrize('ids', [[1, 1], [-1, 0], [0.5, 1.0], [1, 2, 3], [True, False]])
def test_odd_ids_are_refused(ids):
    with pytest.raises(DataError, match='ids'):
        FlatIndex(torch.eye(2), ids)


def test_a_file_comes_back_whole_or_is_refused(tmp_path):
    x, q, path = corpus('plain', 300), torch.randn(3, 24), tmp_path / 'flat.index'
    index = FlatIndex(x, torch.arange(300) * 2)
    index.save(path)
    assert all(torch.equal(a, b) for a, b in zip(index.search(q, 9), FlatIndex.load(path).search(q, 9)))
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match='altered'):
        FlatIndex.load(path)


def test_eight_threads_get_the_lists_of_one():
    x = corpus('plain')
    index, requests = FlatIndex(x), [(torch.randn(B, 24), k) for B in (1, 5, 20) for k in (1, 30, 900)]
    alone = [index.search(*r) for r in requests]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda r: index.search(*r), requests * 3))
    assert all(torch.equal(a, b) for one, many in zip(alone * 3, together) for a, b in zip(one, many))
