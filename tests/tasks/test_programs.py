"Programs score as the model does, for any number of users, of events and of items."

import json
import os

import numpy as np
import pytest
import torch

from molrec.base.errors import ConfigError, DataError
from molrec.data.sequences import Sequences
from molrec.data.splits import Query
from molrec.encoders.gru4rec import GRU4Rec
from molrec.encoders.hstu import HSTU
from molrec.encoders.sasrec import SASRec
from molrec.similarities.dot import Dot
from molrec.similarities.mol import MoL
from molrec.tasks.evaluation import encode
from molrec.tasks.model import RetrievalModel
from molrec.tasks.programs import Queries, export_model, served_scores

N, D, L = 30, 16, 12


def sasrec():
    return SASRec(N, D, max_length=L, n_heads=2, ffn=D)


def hstu(**settings):
    return HSTU(N, D, max_length=L, n_heads=2, head_dim=8, **settings)


def mol(**settings):
    return MoL(D, 4, 2, 8, query_hidden=16, gate_hidden=8, **settings)


MODELS = {
    'sasrec-mol': lambda: RetrievalModel(sasrec(), mol()),
    'hstu-dot': lambda: RetrievalModel(hstu(), Dot()),
    'hstu-mol-users': lambda: RetrievalModel(hstu(norm=True), mol(n_uid=2, uid_rows=9)),
    'hstu-untimed': lambda: RetrievalModel(hstu(use_time=False), Dot()),
}


def made(name) -> RetrievalModel:
    torch.manual_seed(0)
    model = MODELS[name]()
    for p in model.parameters():
        p.data += 0.2 * torch.randn_like(p)  # as after some training
    return model.eval().requires_grad_(False)


def asked(lengths, seed=0) -> Query:
    rng, offsets = np.random.default_rng(seed), np.r_[0, np.cumsum(lengths)]
    times = np.concatenate([1_600_000_000 + rng.integers(1, 10**6, n).cumsum() for n in lengths])
    history = Sequences(np.arange(len(lengths)), offsets, rng.integers(N, size=offsets[-1]), times)
    return Query(history, times[offsets[1:] - 1] + rng.integers(1, 10**5, len(lengths)))


def padded_inputs(model, query: Query, users) -> tuple:
    "What a server hands over: rectangles, filled up with whatever there is."
    h, B = query.history, len(query)
    width, g = int(h.lengths.max()), torch.Generator().manual_seed(1)
    items, times = torch.randint(N, (B, width), generator=g), torch.randint(2**40, (B, width), generator=g)
    for b, (start, end) in enumerate(zip(h.offsets, h.offsets[1:])):
        items[b, : end - start] = torch.from_numpy(h.items[start:end])
        times[b, : end - start] = torch.from_numpy(h.times[start:end])
    given = dict(
        items=items, lengths=torch.from_numpy(h.lengths), times=times, at=torch.from_numpy(query.at), users=users
    )
    return tuple(given[name] for name in Queries(model).inputs)


def ours(model, query: Query, users) -> torch.Tensor:
    queries = encode(model, query, L)
    known, unknown = (model.similarity(queries, model.encoder.items, u) for u in (users.clamp(min=0), None))
    return torch.where((users >= 0)[:, None], known, unknown)


def agree(model, programs):
    side = model.similarity.item_side(model.encoder.items)
    for seed, lengths in enumerate([[1], [L], [3, 1], [2, 7, 5, 12, 1, 1, 9], [4] * 33]):
        query, users = asked(lengths, seed), torch.arange(len(lengths)) % 4 - 1
        wanted = ours(model, query, users)
        for rows in (slice(None), slice(3, 4), slice(2, 19)):
            found = served_scores(programs, padded_inputs(model, query, users), tuple(t[rows] for t in side))
            assert (found - wanted[:, rows]).abs().max() <= 2e-5 * wanted.abs().max()


@pytest.fixture(scope='module', params=MODELS)
def exported(request, tmp_path_factory):
    model = made(request.param)
    return model, export_model(model, tmp_path_factory.mktemp('programs') / request.param)


def test_loaded_programs_score_as_the_model_does(exported):
    model, folder = exported
    agree(model, {name: torch.export.load(folder / f'{name}.pt2').module() for name in ('queries', 'scores')})


def test_the_description_says_what_goes_in_and_what_is_missing(exported):
    model, folder = exported
    about = json.loads((folder / 'about.json').read_text())
    assert list(about['queries']['inputs']) == list(Queries(model).inputs) and about['longest_history'] == L
    assert about['not_exported'].startswith('top-k') and about['items']['side_0'][0] == N


def test_the_present_time_is_asked_where_the_model_was_told_so():
    torch.manual_seed(0)
    model = RetrievalModel(hstu(next_time=False), Dot()).eval().requires_grad_(False)
    query, nobody = asked([3, 8]), torch.full((2,), -1)
    found = Queries(model)(*padded_inputs(model, query, nobody))[0]
    wanted = model.similarity.query_side(encode(model, query, L))[0]
    assert (found - wanted).abs().max() <= 2e-5 * wanted.abs().max()


def test_filling_changes_nothing():
    model, query = made('hstu-dot'), asked([3, 5])
    given = padded_inputs(model, query, torch.zeros(2, dtype=torch.int64))
    other = [t.clone() for t in given]
    other[0][0, 3:], other[2][0, 3:] = 0, -5
    assert torch.equal(Queries(model)(*given)[0], Queries(model)(*other)[0])


def test_an_encoder_without_a_program_is_named(tmp_path):
    model = RetrievalModel(GRU4Rec(N, D), Dot()).eval()
    with pytest.raises(ConfigError, match='export: no program for GRU4Rec, there are programs for SASRec, HSTU'):
        export_model(model, tmp_path / 'gru')
    assert not (tmp_path / 'gru').exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / 'mine.txt').write_text('x')
    with pytest.raises(DataError, match='there is something under this name'):
        export_model(made('sasrec-mol'), tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ['mine.txt']


@pytest.mark.skipif('MOLREC_SLOW' not in os.environ, reason='needs another library: MOLREC_SLOW=1 runs it')
@pytest.mark.parametrize('name', ['sasrec-mol', 'hstu-dot', 'hstu-mol-users'])
def test_onnx_scores_as_the_model_does(name, tmp_path):
    for library in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(library, reason=f'{library} is not installed')
    import onnxruntime

    model = made(name)
    folder = export_model(model, tmp_path / name, onnx=True)
    about = json.loads((folder / 'about.json').read_text())

    def runs(part):
        session = onnxruntime.InferenceSession(folder / f'{part}.onnx', providers=['CPUExecutionProvider'])
        known = {i.name for i in session.get_inputs()}

        def call(*tensors):
            given = {n: t.numpy() for n, t in zip(about[part]['inputs'], tensors, strict=True) if n in known}
            return tuple(map(torch.from_numpy, session.run(None, given)))

        return call

    queries, scores = runs('queries'), runs('scores')
    agree(model, dict(queries=queries, scores=lambda *tensors: scores(*tensors)[0]))
