"Weights of the public code give the public code's numbers: its formulas are written out here, padded as it pads."

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from molrec.base.errors import ConfigError, DataError
from molrec.data.packed import pack_history
from molrec.data.sequences import Sequences
from molrec.data.splits import Query
from molrec.search.asked import make_index
from molrec.tasks.evaluation import encode
from molrec.tasks.public_checkpoints import hstu_shapes, public_model, read_state

N, D, L, P, H = 40, 8, 9, 20, 2  # items, width, longest history, rows of positions (L + 11), heads
ITEMS, POSITIONS = '_embedding_module._item_emb.weight', '_input_features_preproc._pos_emb.weight'


def drawn(shapes: dict, scale=0.4) -> dict:
    g = torch.Generator().manual_seed(0)
    return {name: scale * torch.randn(shape, generator=g) for name, shape in shapes.items()}


@pytest.fixture
def asked():
    "Histories of 1, 4, 7 and 9 items, with times, and when each asks."
    lengths, rng = np.array([1, 4, 7, 9]), np.random.default_rng(0)
    offsets = np.r_[0, lengths.cumsum()]
    times = np.concatenate([1_600_000_000 + rng.integers(1, 10**6, n).cumsum() for n in lengths])
    history = Sequences(np.arange(4), offsets, rng.integers(N, size=offsets[-1]), times)
    return Query(history, times[offsets[1:] - 1] + 5_000)


def windows(query: Query, width: int, left: bool) -> tuple:
    "Their item ids (B, width) with 0 for padding, and times; on the left or on the right."
    B, h = len(query), query.history
    ids, times = torch.zeros(B, width, dtype=torch.int64), torch.zeros(B, width, dtype=torch.int64)
    for b, (start, end) in enumerate(zip(h.offsets, h.offsets[1:])):
        n, at = end - start, width - (end - start) if left else 0
        ids[b, at : at + n] = torch.from_numpy(h.items[start:end]) + 1
        times[b, at : at + n] = torch.from_numpy(h.times[start:end])
        if not left:
            times[b, n] = int(query.at[b])
    return ids, times


def last(out: torch.Tensor, query: Query) -> torch.Tensor:
    return out[torch.arange(len(out)), torch.from_numpy(query.history.lengths) - 1]


def embedded(state: dict, ids: torch.Tensor) -> torch.Tensor:
    x = state[ITEMS][ids] * math.sqrt(D) + state[POSITIONS][: ids.shape[1]]
    return x * (ids != 0)[..., None]


# -- the research code: HSTU, SASRec, MoL --


def hstu_state(n_blocks=2) -> dict:
    return drawn({ITEMS: (N + 1, D), POSITIONS: (P, D)} | hstu_shapes(P, D, D, n_blocks))


def hstu_formula(state: dict, ids: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    "HSTU on padded sequences, (B, P, D), from its paper and configuration."
    x, (B, n), i = embedded(state, ids), ids.shape, torch.arange(P)
    following = torch.cat([times[:, 1:], times[:, -1:]], 1)
    age = (following[:, :, None] - times[:, None, :]).abs().clamp(min=1)
    bucket = (torch.log(age.float()) / 0.301).long().clamp(0, 128)
    for block in range(2):
        p = {name: state[f'_hstu._attention_layers.{block}.{name}'] for name in ('_uvqk', '_o.weight', '_o.bias')}
        pos, ts = (state[f'_hstu._attention_layers.{block}._rel_attn_bias.{w}'] for w in ('_pos_w', '_ts_w'))
        mixed = F.silu(F.layer_norm(x, (D,), eps=1e-6) @ p['_uvqk'])
        u, v, q, k = mixed.split(D, dim=-1)
        q, k, v = (t.view(B, n, H, D // H) for t in (q, k, v))
        bias = pos[P - 1 + i[None, :] - i[:, None]] + ts[bucket]
        weights = F.silu(torch.einsum('bihd,bjhd->bhij', q, k) + bias[:, None]) / P
        weights = weights * (i[None, :] <= i[:, None])
        heard = torch.einsum('bhij,bjhd->bihd', weights, v).reshape(B, n, D)
        x = (u * F.layer_norm(heard, (D,), eps=1e-6)) @ p['_o.weight'].T + p['_o.bias'] + x
    return x


def attention(state: dict, i: int, query, key) -> torch.Tensor:
    "Multi-head attention of torch, causal, on (B, n, D); padding is not masked."
    made, n = torch.nn.MultiheadAttention(D, H, batch_first=True).eval(), query.shape[1]
    named = ('in_proj_weight', 'in_proj_bias', 'out_proj.weight', 'out_proj.bias')
    made.load_state_dict({name: state[f'attention_layers.{i}.{name}'] for name in named})
    with torch.no_grad():
        return made(query, key, key, attn_mask=torch.ones(n, n).triu(1).bool(), need_weights=False)[0]


def network(state: dict, up: str, down: str, x) -> torch.Tensor:
    "Two convolutions of width 1 on (B, n, D)."
    hidden = F.relu(F.conv1d(x.transpose(1, 2), state[f'{up}.weight'], state[f'{up}.bias']))
    return F.conv1d(hidden, state[f'{down}.weight'], state[f'{down}.bias']).transpose(1, 2)


def attention_names(n_blocks=2) -> dict:
    shapes = dict(in_proj_weight=(3 * D, D), in_proj_bias=(3 * D,)) | {'out_proj.weight': (D, D), 'out_proj.bias': (D,)}
    return {f'attention_layers.{i}.{name}': shape for i in range(n_blocks) for name, shape in shapes.items()}


def sasrec_state(hidden=12, n_blocks=2) -> dict:
    shapes = {ITEMS: (N + 1, D), POSITIONS: (P, D)} | attention_names(n_blocks)
    for i in range(n_blocks):
        up, down = (f'forward_layers.{i}._conv1d.{n}' for n in (0, 3))
        shapes |= {f'{up}.weight': (hidden, D, 1), f'{up}.bias': (hidden,)}
        shapes |= {f'{down}.weight': (D, hidden, 1), f'{down}.bias': (D,)}
    return drawn(shapes) | dict(_attn_mask=torch.ones(P, P).triu(1).bool())


def sasrec_formula(state: dict, ids: torch.Tensor) -> torch.Tensor:
    "SASRec of the research code on padded sequences, (B, P, D)."
    x = embedded(state, ids)
    for i in range(2):
        q = F.layer_norm(x, (D,), eps=1e-8)
        y = F.layer_norm(q + attention(state, i, q, x), (D,), eps=1e-8)
        x = y + network(state, f'forward_layers.{i}._conv1d.0', f'forward_layers.{i}._conv1d.3', y)
        x = x * (ids != 0)[..., None]
    return x


def cosine_scores(queries: torch.Tensor, state: dict, tau=0.05) -> torch.Tensor:
    items = state[ITEMS][1:]
    return (queries / queries.norm(dim=-1, keepdim=True)) @ (items / items.norm(dim=-1, keepdim=True)).T / tau


def ours(model, query: Query, users=None) -> torch.Tensor:
    return model.similarity(encode(model, query, L), model.encoder.items, users)


def agree(a: torch.Tensor, b: torch.Tensor) -> None:
    "To the rounding of fp32, relative to the largest number."
    assert (a - b).abs().max() <= 2e-5 * b.abs().max()


def test_hstu_scores_as_the_public_code_does(asked):
    state = hstu_state()
    queries = last(hstu_formula(state, *windows(asked, P, left=False)), asked)
    agree(encode(public_model(state, n_heads=H), asked, L), queries)
    agree(ours(public_model(state, n_heads=H), asked), cosine_scores(queries, state))


def test_sasrec_scores_as_the_public_code_does(asked):
    state = sasrec_state()
    queries = last(sasrec_formula(state, windows(asked, P, left=False)[0]), asked)
    agree(ours(public_model(state, n_heads=H), asked), cosine_scores(queries, state))


PQ, PX, WIDTH, GATE, GLU, HASH = 4, 3, 5, 6, 7, 11


def mol_state(n_uid: int, older: bool) -> dict:
    query, gate, G = '_query_embeddings_fn._query_emb_proj_module', '_gating_fn', PQ * PX
    item = '_item_proj_module.1' if older else '_item_embeddings_fn._item_emb_proj_module.1'
    shapes = {f'{query}.1._w': (D, 2 * GLU), f'{query}.1._b': (1, 2 * GLU)}
    shapes |= {f'{query}.2.weight': ((PQ - n_uid) * WIDTH, GLU), f'{query}.2.bias': ((PQ - n_uid) * WIDTH,)}
    shapes |= {f'{item}.weight': (PX * WIDTH, D), f'{item}.bias': (PX * WIDTH,)}
    for part, n, at, width in (('query_only', D, 0, 2), ('item_only', D, 1, 3), ('qi', G, 1, 3)):
        name = f'{gate}._{part}_partial_module'
        shapes |= {f'{name}.{at}.weight': (GATE, n), f'{name}.{at}.bias': (GATE,), f'{name}.{width}.weight': (G, GATE)}
    shapes[f'{gate}._qi_partial_module.3.bias'] = (G,)
    shapes |= {f'_query_embeddings_fn._uid_embeddings_{j}.weight': (HASH + 1, WIDTH) for j in range(n_uid)}
    return {f'_ndp_module.{name}': t for name, t in drawn(shapes).items()}


def mol_formula(state: dict, queries, items, users, activation, tau=0.05) -> torch.Tensor:
    "phi(q, x) = sum pi_p delta_p, of its paper and of the names of the weights."
    s = {name.removeprefix('_ndp_module.'): t for name, t in state.items() if name.startswith('_ndp_module.')}
    item = next(n.removesuffix('.weight') for n in s if n.startswith('_item') and n.endswith('.weight'))

    def unit(x):
        return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-6)

    left, right = (queries @ s[(q := '_query_embeddings_fn._query_emb_proj_module') + '.1._w'] + s[f'{q}.1._b']).chunk(
        2, -1
    )
    f = (activation(left) * right @ s[f'{q}.2.weight'].T + s[f'{q}.2.bias']).view(len(queries), -1, WIDTH)
    tables = [t for n, t in s.items() if '_uid_embeddings_' in n]
    f = unit(torch.cat([f, *(t[users % HASH + 1][:, None] for t in tables)], 1))
    g = unit((items @ s[f'{item}.weight'].T + s[f'{item}.bias']).view(len(items), -1, WIDTH))
    delta = torch.einsum('bnd,xmd->bxnm', f, g).flatten(2) / tau

    def gate(part, x, at):
        name = f'_gating_fn._{part}_partial_module'
        hidden = F.silu(x @ s[f'{name}.{at}.weight'].T + s[f'{name}.{at}.bias'])
        return hidden @ s[f'{name}.{at + 2}.weight'].T + s.get(f'{name}.{at + 2}.bias', 0)

    z = gate('query_only', queries, 0)[:, None] * gate('item_only', items, 1)[None] + gate('qi', delta, 1)
    return (torch.softmax(F.silu(z), -1) * delta).sum(-1)


@pytest.mark.parametrize('n_uid', [0, 2])
@pytest.mark.parametrize('older', [True, False])
@pytest.mark.parametrize('glu, activation', [('swiglu', F.silu), ('geglu', F.gelu)])
@pytest.mark.parametrize('encoder', ['hstu', 'sasrec'])
def test_mol_scores_as_the_public_code_does(asked, n_uid, older, glu, activation, encoder):
    state = (hstu_state() if encoder == 'hstu' else sasrec_state()) | mol_state(n_uid, older)
    ids, times = windows(asked, P, left=False)
    out = hstu_formula(state, ids, times) if encoder == 'hstu' else sasrec_formula(state, ids)
    queries, users = F.layer_norm(last(out, asked), (D,), eps=1e-6), torch.tensor([3, 14, 11, 999])
    model = public_model(state, n_heads=H, glu=glu)
    agree(ours(model, asked, users), mol_formula(state, queries, state[ITEMS][1:], users, activation))


# -- SASRec.pytorch --


def pmixer_state(rows: int) -> dict:
    norms = [f'{kind}_layernorms.{i}' for kind in ('attention', 'forward') for i in range(2)] + ['last_layernorm']
    shapes = {'item_emb.weight': (N + 1, D), 'pos_emb.weight': (rows, D)} | attention_names()
    shapes |= {f'{name}.{part}': (D,) for name in norms for part in ('weight', 'bias')}
    for i in range(2):
        for conv in ('conv1', 'conv2'):
            shapes |= {f'forward_layers.{i}.{conv}.weight': (D, D, 1), f'forward_layers.{i}.{conv}.bias': (D,)}
    state = drawn(shapes)
    state['item_emb.weight'][0] = 0
    if rows == L + 1:
        state['pos_emb.weight'][0] = 0
    return state


def pmixer_formula(state: dict, ids: torch.Tensor, wiring: str) -> torch.Tensor:
    "SASRec.pytorch on sequences that are padded on the left, (B, L, D)."
    real = (ids != 0)[..., None]

    def norm(name, x):
        return F.layer_norm(x, (D,), state[f'{name}.weight'], state[f'{name}.bias'], 1e-8)

    def ffn(i, x):
        return network(state, f'forward_layers.{i}.conv1', f'forward_layers.{i}.conv2', x)

    x = state['item_emb.weight'][ids] * math.sqrt(D)
    if wiring == 'query-norm':
        x = (x + state['pos_emb.weight']) * real
    else:
        x = x + state['pos_emb.weight'][torch.arange(1, L + 1) * (ids != 0)]
    for i in range(2):
        first, second = f'attention_layernorms.{i}', f'forward_layernorms.{i}'
        if wiring == 'query-norm':
            q = norm(first, x)
            y = norm(second, q + attention(state, i, q, x))
            x = (y + ffn(i, y)) * real
        elif wiring == 'pre-norm':
            y = norm(first, x)
            x = x + attention(state, i, y, y)
            x = x + ffn(i, norm(second, x))
        else:
            x = norm(first, x + attention(state, i, x, x))
            x = norm(second, x + ffn(i, x))
    return norm('last_layernorm', x)


@pytest.mark.parametrize('wiring, rows', [('query-norm', L), ('post-norm', L + 1), ('pre-norm', L + 1)])
def test_sasrec_pytorch_scores_as_the_public_code_does(asked, wiring, rows):
    state = pmixer_state(rows)
    model = public_model(state, n_heads=H, wiring=wiring)
    assert model.encoder.max_length == L
    scores = pmixer_formula(state, windows(asked, L, left=True)[0], wiring)[:, -1] @ state['item_emb.weight'][1:].T
    agree(ours(model, asked), scores)


def test_every_position_is_a_query_there_too(asked):
    state = pmixer_state(L + 1)
    ids = windows(asked, L, left=True)[0]
    theirs = pmixer_formula(state, ids, 'post-norm')[ids != 0]
    with torch.no_grad():
        agree(public_model(state, n_heads=H).encoder(pack_history(asked, L)), theirs)


# -- served by our index --


@pytest.mark.parametrize('kind', ['brute-force', 'per-component', 'exact'])
def test_an_index_serves_them(asked, kind):
    state = hstu_state() | mol_state(0, older=False)
    model = public_model(state, n_heads=H)
    index = make_index(model, kind)
    scores, ids = index.search(encode(model, asked, L), 5)
    best = ours(model, asked).topk(5)
    if kind != 'per-component':
        assert torch.equal(ids, best.indices)
    agree(scores[:, 0], best.values[:, 0])


# -- files --


def test_the_form_of_the_file_is_nothing(asked, tmp_path):
    state = hstu_state()
    torch.save(state, tmp_path / 'plain.pt')
    wrapped = {f'module.{name}': t for name, t in state.items()}
    torch.save(dict(epoch=100, model_state_dict=wrapped, optimizer_state_dict=dict(state={})), tmp_path / 'rails_ep100')
    save_file(state, tmp_path / 'plain.safetensors')
    scores = [ours(public_model(f, n_heads=H), asked) for f in (state, *sorted(tmp_path.iterdir()))]
    assert len(scores) == 4 and all(torch.equal(s, scores[0]) for s in scores)


class Armed:
    def __reduce__(self):
        return (print, ('this must never run',))


@pytest.mark.parametrize('content', [Armed(), dict(model_state_dict=Armed()), torch.nn.Linear(2, 2)], ids=type)
def test_objects_are_refused_unrun(tmp_path, capsys, content):
    torch.save(content, tmp_path / 'a.pt')
    with pytest.raises(DataError, match='a.pt: no tensors by name: .* Python objects, and loading an object runs code'):
        read_state(tmp_path / 'a.pt')
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize('content', [b'', b'not a checkpoint', b'PK\x03\x04 cut'])
@pytest.mark.parametrize('name', ['a.pt', 'a.safetensors'])
def test_what_is_no_checkpoint_is_a_sentence(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f'{name}: '):
        read_state(tmp_path / name)


def test_a_file_that_is_not_there_is_a_sentence(tmp_path):
    with pytest.raises(DataError, match='none.pt: cannot be read'):
        read_state(tmp_path / 'none.pt')


def test_all_that_differs_is_said_at_once():
    state = sasrec_state()
    del state['attention_layers.1.out_proj.bias']
    state |= {'lm_head.weight': torch.ones(2, 2), 'forward_layers.0._conv1d.3.bias': torch.ones(3)}
    with pytest.raises(DataError) as e:
        public_model(state, n_heads=H)
    for said in (
        'no attention_layers.1.out_proj.bias',
        'unknown lm_head.weight',
        '_conv1d.3.bias is (3,), wanted (8,)',
    ):
        assert said in str(e.value)


@pytest.mark.parametrize('change', [{}, {ITEMS: torch.ones(3)}], ids=['nothing', 'a vector'])
def test_without_the_tensors_that_show_sizes_it_is_a_sentence(change):
    state = {name: t for name, t in hstu_state().items() if name != ITEMS} | change
    with pytest.raises(DataError, match=ITEMS.replace('.', r'\.') + '.*wanted a matrix'):
        public_model(state)


def test_another_width_of_keys_is_refused():
    state = hstu_state()
    state['_hstu._attention_layers.0._uvqk'] = torch.ones(D, 3 * D)
    with pytest.raises(DataError, match=r'_uvqk is \(8, 24\), wanted \(8, 32\)'):
        public_model(state, n_heads=H)


def test_a_wiring_that_is_not_known_is_refused():
    with pytest.raises(ConfigError, match="wiring: got 'both', wanted one of query-norm, post-norm, pre-norm"):
        public_model(pmixer_state(L), wiring='both')
    with pytest.raises(ConfigError, match='n_heads: got 3, wanted a divisor of 8'):
        public_model(pmixer_state(L), n_heads=3)
