"MovieLens 20M and all of Amazon Books need a GPU; everything but the size is tried here: the archives' formats, and one epoch of each published row's own model."

import csv
import io
import math
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from molrec.cli.rows import report_rows
from molrec.data.readers import check_interactions, read_amazon_ratings, read_ml20m
from molrec.settings.config import load_config, read_row
from molrec.tasks.model import make_similarity
from molrec.tasks.runs import run

ROOT = Path(__file__).resolve().parents[2]
ROWS = sorted(p for p in (ROOT / 'nbs' / 'configs').glob('*/*.yaml') if read_row(p)[3])
SETS = ('ml-20m', 'amazon-books')
PUBLISHED = {'ml-20m': 3_034_016, 'amazon-books': 264_128}  # parameters of MoL
UID_ROWS = 16_384  # of the published user table on ML-20M; ours has a row per user


def name(path):
    return f'{path.parent.name}/{path.stem}'


def synthetic(n_users=300, n_items=120, least=8, most=40):
    "Interactions of users who move on through the items, in the order of an archive: by user."
    draw = np.random.default_rng(0)
    lengths = draw.integers(least, most, n_users)
    users, at = np.repeat(np.arange(n_users), lengths), np.concatenate([np.arange(n) for n in lengths])
    starts = np.repeat(draw.integers(n_items, size=n_users), lengths)
    times = 1_100_000_000 + 86_400 * at + np.repeat(draw.integers(10**7, size=n_users), lengths)
    return pd.DataFrame(
        dict(
            user=users,
            item=(starts + 2 * at + draw.integers(2, size=len(at))) % n_items,
            rating=draw.integers(1, 11, len(at)) / 2,
            time=times,
        )
    )


def write_ml20m(df, folder):
    "ml-20m.zip as GroupLens ships it: numbers with gaps, titles with commas, in quotation marks."
    ids = 1 + 37 * np.arange(df.item.max() + 1)

    def text(table):
        with io.StringIO() as out:
            table.to_csv(out, index=False, quoting=csv.QUOTE_MINIMAL, lineterminator='\n')
            return out.getvalue()

    ratings = pd.DataFrame(dict(userId=df.user + 1, movieId=ids[df.item], rating=df.rating, timestamp=df.time))
    movies = pd.DataFrame(
        dict(movieId=ids, title=[f'Film {i}, The (19{i % 90 + 10})' for i in range(len(ids))], genres='Comedy|Drama')
    )
    with zipfile.ZipFile(folder / 'ml-20m.zip', 'w') as z:
        for member, table in dict(ratings=ratings, movies=movies).items():
            z.writestr(f'ml-20m/{member}.csv', text(table))
    return read_ml20m(folder / 'ml-20m.zip')


def write_books(df, folder):
    "ratings_Books.csv as SNAP ships it: no header, ids that are text, some of them all digits; days."
    asin = [f'{i:010d}' if i % 2 else f'B{i:09X}' for i in range(df.item.max() + 1)]
    table = pd.DataFrame(
        dict(
            user=[f'A{u:013X}' for u in df.user],
            item=[asin[i] for i in df.item],
            rating=df.rating.round(),
            time=df.time // 86_400 * 86_400,
        )
    )
    table.to_csv(folder / 'ratings_Books.csv', index=False, header=False)
    return read_amazon_ratings(folder / 'ratings_Books.csv')


@pytest.fixture(scope='module')
def archives(tmp_path_factory):
    "Data set to what its reader makes of an archive: interactions, items, and a parquet file of the interactions."
    folder, df = tmp_path_factory.mktemp('archives'), synthetic()
    df, found = df.drop_duplicates(['user', 'item']), {}
    for dataset, write in dict(zip(SETS, (write_ml20m, write_books))).items():
        interactions, items = write(df, folder)
        check_interactions(interactions, dataset).to_parquet(folder / f'{dataset}.parquet', index=False)
        found[dataset] = interactions, items, folder / f'{dataset}.parquet'
    return df, found


@pytest.mark.parametrize('dataset', SETS)
def test_an_archive_is_read_whole_and_in_order(archives, dataset):
    df, (interactions, _, _) = archives[0], archives[1][dataset]
    assert list(interactions) == ['user_id', 'item_id', 'rating', 'timestamp'] and len(interactions) == len(df)
    for ours, theirs in dict(user_id='user', item_id='item').items():
        assert (pd.factorize(interactions[ours])[0] == pd.factorize(df[theirs])[0]).all()
    assert (
        interactions.timestamp.dtype == np.int64
        and (interactions.timestamp // 86_400 == df.time.to_numpy() // 86_400).all()
    )


def test_ids_of_digits_stay_text(archives):
    assert archives[1]['amazon-books'][0].item_id.str.fullmatch(r'[0-9]{10}|B[0-9A-F]{9}').all()


def test_films_have_their_titles(archives):
    items = archives[1]['ml-20m'][1]
    assert (
        items.title[0] == 'Film 0, The (1910)'
        and items.year[0] == 1910
        and set(items.item_id) >= set(archives[1]['ml-20m'][0].item_id)
    )


# -- the rows --


def test_there_are_four_rows_for_each_of_the_two():
    assert [name(p) for p in ROWS] == [
        f'{d}/{row}-published'
        for d in sorted(SETS)
        for row in ('hstu-dot-large', 'hstu-dot', 'hstu-mol-large', 'sasrec-dot')
    ]
    assert all(read_row(p)[2] for p in ROWS), 'a row for a GPU is long'


def test_without_a_gpu_the_report_leaves_them_out_and_says_so(monkeypatch, capsys):
    def rows(there, scale='paper', **more):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: there)
        return {f for f, _ in report_rows(ROOT, scale, **more)}

    assert rows(True) - rows(False) == set(ROWS)
    said = capsys.readouterr().out
    assert (
        said.startswith('left out, since there is no GPU: ')
        and said.count('\n') == 1
        and all(name(p) in said for p in ROWS)
    )
    assert rows(False, 'quick', long=True).isdisjoint(ROWS) and capsys.readouterr().out == ''


def encoder_parameters(c, n_items):
    "HSTU by hand: two tables; for each layer both matrices, a bias, biases by distance and by time."
    inner = c.n_heads * c.head_dim
    return (n_items + c.max_length) * c.dim + c.n_blocks * (
        c.dim * 4 * inner + inner * c.dim + c.dim + 2 * (c.max_length + 11) - 1 + 129
    )


@pytest.mark.parametrize('dataset', SETS)
def test_mol_has_the_published_number_of_parameters(dataset):
    c = load_config(ROOT / 'nbs' / 'configs' / dataset / 'hstu-mol-large-published.yaml')
    assert sum(p.numel() for p in make_similarity(c, c.dim, UID_ROWS).parameters()) == PUBLISHED[dataset]


@pytest.mark.parametrize('path', ROWS, ids=name)
def test_a_row_trains_an_epoch(archives, tmp_path, path):
    "The row's own widths and depths, on few users."
    dataset, few = path.parent.name, 40
    interactions = pd.read_parquet(archives[1][dataset][2])
    interactions = interactions[interactions.user_id.isin(interactions.user_id.unique()[:few])]
    interactions.to_parquet(tmp_path / f'{dataset}.parquet', index=False)
    c = load_config(path, overrides=dict(dataset=str(tmp_path / f'{dataset}.parquet'), epochs=1, batch_size=8))
    record = run(c, tmp_path / 'runs', progress=False)
    losses = [e['loss'] for e in record['history']]
    assert (
        len(losses) == 1
        and math.isfinite(losses[0])
        and record['split']['n_users'] == few
        and record['split']['n_test_users'] == few
    )
    assert all(math.isfinite(v) for v in record['metrics']['test'].values())
    if c.encoder != 'hstu':
        return
    of_mol = record['n_parameters'] - encoder_parameters(c, record['split']['n_items'])
    assert of_mol == (0 if c.similarity == 'dot' else PUBLISHED[dataset] - c.n_uid * c.width * (UID_ROWS - few))
