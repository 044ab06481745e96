"Vectors from and to FAISS: every kind of its indexes gives back what it holds, and the same lists come out."

import numpy as np
import pytest
import torch

faiss = pytest.importorskip('faiss', reason='FAISS is not installed')

from molrec.base.errors import DataError
from molrec.search.faiss_vectors import faiss_vectors, from_faiss, to_faiss
from molrec.search.flat_index import FlatIndex

N, W = 700, 12


@pytest.fixture(scope='module')
def world():
    rng = np.random.default_rng(0)
    return rng.standard_normal((N, W), dtype=np.float32), rng.standard_normal((9, W), dtype=np.float32)


def made(recipe, vectors, ids=None):
    index = faiss.index_factory(W, recipe, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors) if ids is None else index.add_with_ids(vectors, ids)
    return index


@pytest.mark.parametrize('recipe', ['Flat', 'HNSW8', 'IVF10,Flat', 'IDMap,Flat', 'IDMap2,HNSW8', 'IDMap,IVF10,Flat'])
def test_every_kind_gives_back_its_vectors(world, recipe):
    vectors, queries = world
    ids = np.random.default_rng(1).permutation(10 * N)[:N] if 'IDMap' in recipe else None
    index = made(recipe, vectors, ids)
    ours = from_faiss(index)
    order = np.arange(N) if ids is None else np.argsort(ids)
    assert np.array_equal(ours.vectors.numpy(), vectors[order])
    assert np.array_equal(ours.ids.numpy(), order if ids is None else ids[order])
    best = (queries.astype(np.float64) @ vectors.T.astype(np.float64)).argsort(1)[:, ::-1][:, :5]
    assert np.array_equal(ours.search(queries, 5)[1].numpy(), best if ids is None else ids[best])


def test_ids_of_an_inverted_file_are_found_and_the_file_stays_as_it_is(world):
    vectors, _ = world
    ids = np.random.default_rng(2).permutation(10**12 + np.arange(N))
    index = made('IVF10,Flat', vectors, ids)
    found, where = faiss_vectors(index)
    assert np.array_equal(found, vectors[np.argsort(ids)]) and np.array_equal(where, np.sort(ids))
    assert index.direct_map.type == faiss.DirectMap.NoMap


@pytest.mark.parametrize('recipe', ['Flat', 'HNSW16', 'IVF8,Flat'])
def test_there_and_back_is_the_same_index(world, recipe):
    vectors, queries = world
    ours = FlatIndex(vectors, np.random.default_rng(3).permutation(5 * N)[:N])
    back = from_faiss(to_faiss(ours, recipe))
    assert torch.equal(back.vectors, ours.vectors) and torch.equal(back.ids, ours.ids)


def test_flat_answers_as_ours_does(world):
    vectors, queries = world
    ours = FlatIndex(vectors)
    scores, ids = to_faiss(ours).search(queries, 20)
    assert np.array_equal(ids, ours.search(queries, 20)[1].numpy())
    assert np.allclose(scores, ours.search(queries, 20)[0].numpy(), rtol=1e-5, atol=1e-5)


def test_more_results_than_items_are_filled_alike():
    index = FlatIndex(np.eye(3, W, dtype=np.float32))
    ours, theirs = (
        index.search(np.ones((1, W)), 5)[1].numpy(),
        to_faiss(index).search(np.ones((1, W), np.float32), 5)[1],
    )
    assert sorted(ours[0]) == sorted(theirs[0]) == [-1, -1, 0, 1, 2]


def test_what_cannot_be_served_by_inner_products_is_refused(world):
    vectors, _ = world
    with pytest.raises(DataError, match='built for distances'):
        from_faiss(faiss.IndexFlatL2(W))
    index = made('IDMap,Flat', vectors, np.arange(N) - 5)
    with pytest.raises(DataError, match='ids: got -5, wanted none below 0'):
        from_faiss(index)
    twice = made('IDMap,Flat', vectors, np.zeros(N, np.int64))
    with pytest.raises(DataError, match='ids: 0 occurs twice'):
        from_faiss(twice)
