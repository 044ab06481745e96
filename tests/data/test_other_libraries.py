"Interactions from and to RecBole, RecTools, LensKit and TREC: what goes over comes back, or is refused by name."

import io
import os
import sys

import numpy as np
import pandas as pd
import pytest

from molrec.base.errors import ConfigError, DataError
from molrec.data.doors import read_interactions
from molrec.data.examples import ring, write_text
from molrec.data.other_libraries import (
    dated,
    from_lenskit,
    from_rectools,
    misread_ids,
    read_atomic,
    read_atomic_table,
    read_trec,
    to_lenskit,
    to_rectools,
    write_atomic,
)

SLOW = pytest.mark.skipif('MOLREC_SLOW' not in os.environ, reason='needs another library: MOLREC_SLOW=1 runs it')
ODD = ['007', '7', ' 7', '7 ', '1e3', 'None ', 'naïve', "O'Hara", 'a"b', '#7', '-', '0x1F', 'TRUE', '7.0', 'x' * 300]


def needs(library):
    return pytest.importorskip(library, reason=f'{library} is not installed: a virtual environment of its own has it')


def odd_events() -> pd.DataFrame:
    users, items = np.repeat(ODD, len(ODD)), np.tile(ODD, len(ODD))
    return pd.DataFrame(dict(user_id=users, item_id=items, timestamp=np.arange(len(users)) + 1_600_000_000))


def same(a: pd.DataFrame, b: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(a.reset_index(drop=True), b.reset_index(drop=True), check_dtype=False)


# -- atomic files --


def test_odd_ids_go_to_atomic_files_and_back(tmp_path):
    made = write_atomic(tmp_path, 'odd', odd_events())
    same(read_atomic(made).interactions, odd_events())
    same(read_interactions(made / 'odd.inter').interactions, odd_events())


def test_pandas_reads_written_ids_as_recbole_calls_it(tmp_path):
    made = write_atomic(tmp_path, 'odd', odd_events())
    read = pd.read_csv(
        made / 'odd.inter', delimiter='\t', dtype={'user_id:token': str, 'item_id:token': str}, engine='python'
    )
    assert read['user_id:token'].tolist() == odd_events().user_id.tolist()
    assert read['timestamp:float'].astype(np.int64).tolist() == odd_events().timestamp.tolist()


@pytest.mark.parametrize('id', ['NA', 'nan', 'NULL', 'None', 'n/a', '<NA>', '"quoted"', '"', 'a\tb', 'a\nb', 'a\rb'])
def test_an_id_that_recbole_would_lose_is_refused_with_its_row(tmp_path, id):
    events = pd.DataFrame(dict(user_id=['ann', id], item_id=['7', '8']))
    with pytest.raises(DataError, match='shop.inter, row 1: user_id is'):
        write_atomic(tmp_path, 'shop', events)
    assert not (tmp_path / 'shop' / 'shop.inter').exists()


def test_a_refused_id_is_one_that_pandas_changes():
    ids = pd.Series([*ODD, 'NA', 'null', '', '-nan', '1.#IND', 'N/A'])
    lines = '\n'.join(['a\tb', *(ids + '\t.')])
    read = pd.read_csv(io.StringIO(lines), sep='\t', dtype=str).a
    assert misread_ids(ids).tolist() == (read != ids).tolist()


def test_items_and_users_keep_genres_titles_and_numbers(tmp_path):
    events = pd.DataFrame(dict(user_id=[1, 2], item_id=[10, 11], rating=[5.0, 0.5]))
    items = pd.DataFrame(
        dict(
            item_id=[10, 11, 12],
            title=['Heat (1995)', '', 'A'],
            genres=['Crime|Noir', '', 'Spy'],
            year=[1995, pd.NA, 3],
        )
    )
    users = pd.DataFrame(dict(user_id=[1, 2], age=[30, 41], town=['Ulm', 'São Paulo']))
    back = read_atomic(write_atomic(tmp_path, 'shop', events, items.astype(dict(year='Int64')), users))
    assert back.interactions.columns.tolist() == ['user_id', 'item_id']
    assert back.items.genres.tolist() == ['Crime|Noir', '', 'Spy'] and back.items.title[0] == 'Heat (1995)'
    assert back.items.year.tolist()[0] == 1995 and pd.isna(back.items.year[1])
    assert back.users.town.tolist() == ['Ulm', 'São Paulo'] and back.users.age.tolist() == [30, 41]
    header = (tmp_path / 'shop' / 'shop.inter').read_text().splitlines()[0]
    assert header == 'user_id:token\titem_id:token\trating:float'


def test_genres_with_blanks_stay_one_text(tmp_path):
    items = pd.DataFrame(dict(item_id=[1], genres=['Hair Care|Soap']))
    made = write_atomic(tmp_path, 'shop', pd.DataFrame(dict(user_id=[1], item_id=[1])), items)
    assert (made / 'shop.item').read_text().startswith('item_id:token\tgenres:token\n')
    assert read_atomic(made).items.genres.tolist() == ['Hair Care|Soap']


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match='nothing.inter: no such file; wanted a folder NAME with NAME.inter'):
        read_atomic(tmp_path / 'nothing.inter')
    file = write_text(tmp_path / 'shop.item', 'product_id:token\ttitle:token\n1\ta\n')
    with pytest.raises(
        DataError, match='shop.item, line 1: no column item_id; there are product_id:token, title:token'
    ):
        read_atomic_table(file, 'item_id')


@SLOW
def test_recbole_reads_what_is_written(tmp_path):
    needs('recbole')
    from recbole.config import Config
    from recbole.data import create_dataset

    write_atomic(tmp_path, 'ring', ring())
    settings = dict(data_path=str(tmp_path), train_neg_sample_args=None)
    settings = dict(data_path=str(tmp_path), train_neg_sample_args=None)
    config = Config(model='SASRec', dataset='ring', config_dict=settings)
    dataset = create_dataset(config)
    users, items = (dataset.id2token(f, np.asarray(dataset.inter_feat[f])) for f in ('user_id', 'item_id'))
    assert users.tolist() == ring().user_id.astype(str).tolist()
    assert items.tolist() == ring().item_id.astype(str).tolist()


# -- RecTools and LensKit --


def test_without_times_the_order_of_rows_is_the_order_of_dates():
    df = ring().drop(columns='timestamp')
    made = dated(df)
    assert made.datetime.is_monotonic_increasing and made.datetime.is_unique
    assert made.user_id.tolist() == df.user_id.tolist()


@pytest.mark.parametrize('there, library', [(to_rectools, 'rectools'), (to_lenskit, 'lenskit')])
def test_a_library_that_is_not_there_is_named(there, library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        ConfigError, match=rf"{library}: not installed, and wanted here: pip install 'molrec\[bridges\]'"
    ):
        there(ring())


class Maps:
    "What a `Dataset` of RecTools is to its caller."

    def __init__(self, frame):
        self.frame = frame

    def get_raw_interactions(self):
        return self.frame.rename(columns=dict(timestamp='datetime')).assign(weight=1.0)


def test_rectools_interactions_come_with_their_ids():
    frame = odd_events().assign(timestamp=lambda t: pd.to_datetime(t.timestamp, unit='s'))
    same(from_rectools(Maps(frame)), odd_events())


class Table:
    "What a `Dataset` of LensKit is to its caller."

    def __init__(self, frame):
        self.frame = frame

    def interactions(self):
        return self

    def pandas(self, ids):
        assert ids
        return self.frame.sort_values(['user_id', 'item_id'])


def test_lenskit_interactions_are_put_in_order_again_or_refused():
    same(from_lenskit(Table(odd_events())), odd_events())
    with pytest.raises(DataError, match='without times the order of events is lost'):
        from_lenskit(Table(odd_events().drop(columns='timestamp')))


@SLOW
@pytest.mark.parametrize('events', [odd_events(), ring()], ids=['text', 'numbers'])
def test_rectools_gives_back_what_it_was_given(events):
    library = needs('rectools.dataset')
    dataset = to_rectools(events)
    assert isinstance(dataset, library.Dataset)
    assert set(dataset.user_id_map.external_ids) == set(events.user_id)
    same(from_rectools(dataset), events)


@SLOW
@pytest.mark.parametrize('events', [odd_events(), ring(n_users=5)], ids=['text', 'numbers'])
def test_lenskit_gives_back_what_it_was_given(events):
    needs('lenskit')
    dataset = to_lenskit(events)
    assert (dataset.user_count, dataset.item_count) == (events.user_id.nunique(), events.item_id.nunique())
    by = ['user_id', 'timestamp']
    same(from_lenskit(dataset).sort_values(by, kind='stable'), events.sort_values(by, kind='stable'))


# -- TREC --


def test_a_run_is_ordered_by_its_scores_not_its_ranks(tmp_path):
    file = write_text(tmp_path / 'a.run', 'q Q0 d1 1 0.2 x\n\nq Q0 d2 2 0.9 x\n')
    assert read_trec(file).to_dict('list') == dict(user_id=['q', 'q'], item_id=['d1', 'd2'], score=[0.2, 0.9])


@pytest.mark.parametrize(
    'name, text, message',
    [
        ('a.run', '', 'a.run, no lines, wanted 6'),
        ('a.run', 'q Q0 d 1 x t\n', "score is 'x', wanted a number"),
        ('a.qrels', '1 0 7 2\n1 0 7\n', 'line 2: 3 fields, wanted 4: user_id zero item_id rating'),
        ('a.csv', '', r'a.csv: wanted a name ending in .run or .qrels'),
    ],
)
def test_what_is_no_run_is_refused_with_its_line(tmp_path, name, text, message):
    with pytest.raises(DataError, match=message):
        read_trec(write_text(tmp_path / name, text))
