"The encoder bench at toy size: the padded forms are the same networks, and the command leaves its files."

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from molrec.bench import encoders, padded
from molrec.data.packed import PackedBatches
from molrec.data.splits import split
from molrec.encoders.bert4rec import BERT4Rec
from molrec.encoders.gru4rec import GRU4Rec
from molrec.encoders.hstu import HSTU
from molrec.encoders.sasrec import SASRec
from molrec.settings.config import Config

N, n = 30, 13
makers = {
    'sasrec': lambda: SASRec(N, 8, n),
    'sasrec with two heads': lambda: SASRec(N, 8, n, n_blocks=1, n_heads=2, ffn=20),
    'hstu': lambda: HSTU(N, 8, n, head_dim=8),
    'hstu, normed, of the present time': lambda: HSTU(N, 8, n, 3, 2, 4, next_time=False, norm=True),
    'gru4rec': lambda: GRU4Rec(N, 8, hidden=12),
    'gru4rec with two layers': lambda: GRU4Rec(N, 8, 2, 12),
    'bert4rec': lambda: BERT4Rec(N, 8, n, ffn=20),
}


@pytest.fixture(scope='module')
def s():
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, n, 50)
    return split(
        pd.DataFrame(
            dict(
                user_id=np.repeat(np.arange(50), lengths),
                item_id=np.concatenate([rng.permutation(N)[:k] for k in lengths]),
                timestamp=rng.integers(10**7, size=lengths.sum()),
            )
        ),
        max_length=n,
    )


@pytest.mark.parametrize('lengths', [[1, 2, 2, 5, 13], [7], [13, 13, 13], [5, 1, 9, 1]], ids=str)
@pytest.mark.parametrize('encoder', makers)
def test_plain_and_packed_agree_in_values_and_gradients(encoder, lengths):
    torch.manual_seed(1)
    e = makers[encoder]()
    with torch.no_grad():
        [w.mul_(3) for w in e.parameters() if w.dim() == 2]
    p = encoders.Pass(e, [padded.random_batch(lengths, N, seed=2)])
    e.eval()
    for ours, plain in zip(*(p.gradients(form, p.given[0]) for form in ('packed', 'plain')), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5 * max(1, plain.abs().max().item()))


@pytest.mark.parametrize('encoder', makers)
def test_both_forms_drop_out(encoder):
    p = encoders.Pass(makers[encoder](), [padded.random_batch([3, 9], N)])
    for form in encoders.forms:
        first, second = (p.gradients(form, p.given[0])[0] for _ in range(2))
        assert first.isfinite().all() and not torch.equal(first, second)


def test_padding_is_never_seen():
    "Another batch beside it, and a sequence is encoded the same."
    e = HSTU(N, 8, n).eval()
    batch = padded.random_batch([4, 11], N)
    alone = dataclasses.replace(
        batch,
        users=batch.users[:1],
        offsets=batch.offsets[:2],
        **{k: getattr(batch, k)[:4] for k in ('items', 'targets', 'times', 'next_times')},
    )
    torch.testing.assert_close(padded.plain_hstu(e, batch)[:4], padded.plain_hstu(e, alone))


def test_no_time_of_a_wrong_encoder(s, monkeypatch):
    monkeypatch.setitem(padded.plain_forms, SASRec, lambda e, batch: e(batch) * 1.01)
    with pytest.raises(RuntimeError, match='SASRec: .*e-03 from the plain form'):
        encoders.pass_rows(s, {'SASRec': Config(max_length=n, dim=8, ffn=8)}, 1, 1, 16)


def test_the_bench_writes_a_table_a_figure_and_markdown(s, tmp_path, capsys):
    tiny = dict(max_length=n, batch_size=10, dim=8, n_negatives=8, share=16)
    configs = {'SASRec': Config(ffn=8, **tiny)}
    large = {k: dataclasses.replace(c, head_dim=4, n_blocks=1, **tiny) for k, c in encoders.large_configs.items()}
    table = encoders.encoders(tmp_path / 'bench', True, s, configs, large, matmul=32)
    assert sorted(f.name for f in (tmp_path / 'bench').iterdir()) == [
        'encoders.csv',
        'encoders.md',
        'encoders.png',
        'encoders.svg',
    ]
    assert list(pd.read_csv(tmp_path / 'bench' / 'encoders.csv').columns) == list(table.columns)
    assert table.part.value_counts().to_dict() == {'memory': 2, 'pass': 2, 'epoch': 2}
    assert table[table.part == 'epoch'].bar.tolist() == ['at most 75 s', 'at most 150 s']
    assert (
        'A sample (`--quick`)' in (tmp_path / 'bench' / 'encoders.md').read_text()
        and '[3/3]' in capsys.readouterr().out
    )


def test_a_position_counts_once_and_the_ratio_is_of_rates(s):
    rows = encoders.pass_rows(
        s, {'BERT4Rec': Config(encoder='bert4rec', max_length=n, batch_size=10, dim=8, ffn=8)}, 1, 2, 16
    )
    batches = [b for b, _ in zip(PackedBatches(s.train, 10).epoch(0), range(2))]
    assert {r['positions'] for r in rows} == {sum(len(b.items) for b in batches)}
    assert rows[1]['ratio'] == pytest.approx(rows[1]['positions_per_s'] / rows[0]['positions_per_s'])
    assert rows[1]['verdict'] == ('met' if rows[1]['ratio'] >= 2 else 'missed')
