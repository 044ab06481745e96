"A part is named once: what follows from its declaration, for every part there is, and for two that a test adds."

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from walking import walkers

from molrec.base.errors import ConfigError
from molrec.data.packed import PackedBatch
from molrec.data.sequences import Sequences
from molrec.report.plots import method_style, methods
from molrec.search.index import Index, relative_recall
from molrec.search.recommender import Recommender
from molrec.settings.config import (
    Config,
    choices,
    groups,
    load_config,
    make_config,
    parse_overrides,
    run_id,
    settings_text,
)
from molrec.settings.parts import Settings, forget, names, part, parts, setting
from molrec.similarities.dot import Head
from molrec.similarities.similarity import Similarity, score_tiles
from molrec.tasks.model import make_encoder, make_similarity
from molrec.tasks.objective import row_loss

ROOT = Path(__file__).resolve().parents[2]
DECLARED = [p for kind in parts.values() for p in kind.values()]
each = pytest.mark.parametrize('p', DECLARED, ids=lambda p: f'{p.kind}-{p.name}')
N, D = 12, 8
SMALL = dict(dim=D, max_length=6, ffn=8, hidden=8, n_query=2, n_item=2, width=4, query_hidden=8, gate_hidden=4)


def of_kind(kind):
    return pytest.mark.parametrize('name', names(kind))


def world():
    "Three users' training part."
    rows = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0, 2])
    lengths = [5, 5, 4] + [3] * 12
    items = np.concatenate([rows, np.arange(36) * 5 % N])
    return SimpleNamespace(train=Sequences(np.arange(15), np.cumsum([0, *lengths]), items, None), n_items=N, n_users=15)


def batch():
    items, targets = torch.arange(9) % N, (torch.arange(9) + 1) % N
    return PackedBatch(torch.arange(2), torch.tensor([0, 5, 9]), items, targets, None)


# -- the declarations --


@each
def test_a_part_is_found_where_it_says_and_its_settings_say_what_they_are(p):
    assert callable(p.load())
    for f in dataclasses.fields(p.settings):
        assert f.metadata['help'] and f.metadata['said'] in ('always', 'read', 'changed', 'never'), f.name
    assert dataclasses.fields(p.settings) == () or p.settings() == p.settings(**dataclasses.asdict(p.settings()))


def test_every_setting_has_a_meaning_and_one_declaration():
    for group in groups:
        assert [f.name for f in dataclasses.fields(group) if not f.metadata['help']] == []
    assert {k: choices[k] for k in ('encoder', 'similarity', 'loss')} == {
        k: names(k) for k in ('encoder', 'similarity', 'loss')
    }


def test_a_taken_name_and_a_name_that_nobody_has_are_refused():
    with pytest.raises(ConfigError, match="similarity: the name 'mol' is taken by .similarities.mol:MoL"):
        part('similarity', 'mol', 'mine:MoL')(Settings)
    with pytest.raises(ConfigError, match="encoder: got 'hst', nearest 'hstu'; wanted one of sasrec, hstu"):
        Config(encoder='hst')


def test_looks_differ_and_a_part_without_one_gets_the_next(monkeypatch):
    assert len(set(methods.values())) == len(methods)
    part('similarity', 'plain', 'mine:Plain')(Settings)
    try:
        look = method_style('plain')
    finally:
        forget('similarity', 'plain')
    assert tuple(look.values()) not in methods.values()


# -- conformance: every encoder, similarity, loss --


@of_kind('encoder')
def test_an_encoder_gives_a_query_for_every_history_and_owns_the_items(name):
    torch.manual_seed(0)
    encoder = make_encoder(Config(encoder=name, **SMALL), world()).eval()
    b = batch()
    queries = encoder(b)
    assert queries.shape == (9, encoder.dim) and encoder.items.shape == (N, encoder.dim)
    assert torch.isfinite(queries[b.last]).all()
    first = encoder(PackedBatch(b.users[:1], b.offsets[:2], b.items[:5], b.targets[:5], None))
    assert torch.allclose(queries[4], first[4], atol=1e-5), 'one user must not look at another'
    assert encoder.trainable == parts['encoder'][name].learned == any(p.requires_grad for p in encoder.parameters())


@of_kind('similarity')
def test_a_similarity_scores_the_same_in_tiles_and_reaches_both_sides(name):
    torch.manual_seed(0)
    similarity = make_similarity(Config(similarity=name, **SMALL), D, 15).eval()
    q, x = torch.randn(5, D, requires_grad=True), torch.randn(N, D, requires_grad=True)
    scores = similarity(q, x)
    assert scores.shape == (5, N) and torch.isfinite(scores).all()
    assert torch.allclose(score_tiles(similarity, similarity.query_side(q), similarity.item_side(x)), scores, atol=1e-4)
    scores.square().sum().backward()
    assert q.grad.abs().sum() > 0 and x.grad.abs().sum() > 0
    assert parts['similarity'][name].learned == bool(list(similarity.parameters()))


@of_kind('loss')
@pytest.mark.parametrize('similarity', ['dot', 'mlp'])
def test_a_loss_falls_along_its_gradient(name, similarity):
    torch.manual_seed(0)
    c = Config(loss=name, similarity=similarity, n_negatives=6, share=4, **SMALL)
    scorer, items, targets = make_similarity(c, D, 15), torch.randn(N, D), torch.arange(8)
    queries, given = torch.randn(8, D, requires_grad=True), (targets, targets * 0, torch.full((N,), -2.5))

    def loss(queries):
        torch.manual_seed(1)
        return row_loss(c, scorer, queries, items, *given)

    before = loss(queries)
    before.backward()
    assert before.dim() == 0 and loss((queries - 1e-3 * queries.grad).detach()) < before


@of_kind('index')
def test_an_index_is_one_and_finds_what_scoring_everything_finds(name):
    torch.manual_seed(0)
    similarity, items, queries = (
        make_similarity(Config(similarity='mol', **SMALL), D, 15),
        torch.randn(40, D),
        torch.randn(3, D),
    )
    kind, model = parts['index'][name].load(), SimpleNamespace(similarity=similarity.eval(), head=Head(D, 4).eval())
    truth = parts['index']['brute-force'].load().build(model, items).search(queries, 5)[0]
    assert issubclass(kind, Index) and relative_recall(kind.build(model, items).search(queries, 5)[0], truth) == 1


# -- a part that somebody declares late, in a script of their own --


class Stretched(Similarity):
    "A dot product, stretched."

    def __init__(self, dim, stretch=1.0):
        super().__init__()
        self.between = torch.nn.Parameter(torch.eye(dim) * stretch)

    def query_side(self, queries, users=None):
        return (queries @ self.between,)

    def scores(self, query_side, item_side):
        (q,), (x,) = query_side, item_side
        return q @ x.T if x.dim() == 2 else torch.einsum('bd,brd->br', q, x)


@pytest.fixture
def stretched():
    "A similarity with a setting, declared after everything was imported."

    @part('similarity', 'stretched', f'{__name__}:Stretched')
    @dataclasses.dataclass(frozen=True)
    class StretchedSettings(Settings):
        stretch: float = setting(1.0, 0, 10, help='that the matrix starts with')

    yield StretchedSettings
    forget('similarity', 'stretched')


def test_a_late_part_brings_its_settings_everywhere(stretched, tmp_path):
    before = run_id(Config())
    assert 'stretched' in choices['similarity'] and '  stretch ' in settings_text()
    c = make_config(dict(similarity='stretched') | parse_overrides([('stretch', '2')]))
    assert c.stretch == 2.0 and run_id(c) != run_id(Config(similarity='stretched')) and before == run_id(Config())
    (tmp_path / 'row.yaml').write_text('similarity: stretched\nstretch: 0.5\n')
    assert load_config(tmp_path / 'row.yaml').stretch == 0.5
    with pytest.raises(ConfigError, match='stretch: got 11.0, wanted at least 0 and at most 10'):
        Config(similarity='stretched', stretch=11)
    with pytest.raises(ConfigError, match='with similarity dot, which has no such setting; it belongs to stretched'):
        make_config(dict(stretch=2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        c.stretched = 3


def test_a_late_part_trains_and_serves(stretched, tmp_path):
    walkers(tmp_path / 'events.csv')
    pace = dict(dim=8, ffn=8, epochs=1, n_negatives=8, share=64, max_length=8)
    r = Recommender.fit(tmp_path / 'events.csv', progress=False, similarity='stretched', stretch=0.5, **pace)
    assert (r.trained.config.similarity, r.trained.config.stretch) == ('stretched', 0.5)
    assert len(r.recommend(users=[1, 2], k=3, progress=False)) == 6


def test_what_is_forgotten_leaves_no_setting_behind_and_old_configurations_stand(stretched):
    made = Config(similarity='stretched', stretch=2)
    forget('similarity', 'stretched')
    assert made.stretch == 2
    with pytest.raises(ConfigError, match="unknown key 'stretch'"):
        make_config(dict(stretch=2))
    part('similarity', 'stretched', f'{__name__}:Stretched')(stretched)


def test_a_late_part_can_neither_rename_old_runs_nor_mean_something_else_by_a_name():
    renaming = dataclasses.make_dataclass(
        'A', [('loud', int, setting(1, said='always', help='x'))], bases=(Settings,), frozen=True
    )
    other = dataclasses.make_dataclass('B', [('dim', int, setting(7, help='x'))], bases=(Settings,), frozen=True)
    with pytest.raises(ConfigError, match='loud: .* every run'):
        part('similarity', 'late', 'mine:A')(renaming)
    with pytest.raises(ConfigError, match='dim: similarity late declares it otherwise'):
        part('similarity', 'late', 'mine:B')(other)
    assert 'late' not in names('similarity') and Config().dim == 50
