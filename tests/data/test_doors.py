"The door of a user's own data: ids as written, times in seconds, and no row lost or moved in silence."

import csv
import datetime
import io
import random
import tempfile
import uuid
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from molrec.base.errors import ConfigError, DataError
from molrec.data.doors import content_sha256, read_columns, read_interactions, read_items
from molrec.data.examples import write_text
from molrec.data.sets import load, load_items
from molrec.data.sheets import kind_of

DAY = 86_400


def written(folder: Path, text: str | bytes, name: str = 'mine.csv') -> Path:
    return write_text(folder / name, text)


def log(rows, header='user_id,item_id,timestamp', sep=',') -> str:
    "A text file of rows."
    return '\n'.join([header.replace(',', sep), *(sep.join(map(str, r)) for r in rows)]) + '\n'


def walk(users=6, items=9, n=8):
    return [(u, (u + i) % items + 101, 1_600_000_000 + i * DAY) for u in range(users) for i in range(n)]


# -- ids are text until proven otherwise --


@pytest.mark.parametrize(
    'odd',
    [
        '0007',
        '1e3',
        '+22',
        ' 22',
        '22 ',
        '22.0',
        'NA',
        'None',
        'null',
        'nan',
        'true',
        '-0',
        '９',
        '1_000',
        '0x10',
        '18446744073709551615',
        '9223372036854775808',
        'A0007',
    ],
)
def test_one_odd_id_keeps_the_whole_column_as_written(tmp_path, odd):
    got = load(written(tmp_path, log([(7, 22, 5), (7, odd, 6), ('00007', 1000, 7)])))
    assert got.item_id.tolist() == ['22', odd, '1000'] and got.user_id.tolist() == ['7', '7', '00007']
    assert got.item_id.nunique() == 3 and got.user_id.nunique() == 2


def test_plain_integers_are_numbers_to_the_last_digit(tmp_path):
    ids = [9007199254740992, 9007199254740993, -3, 0, 2**63 - 1, -(2**63)]
    got = load(written(tmp_path, log([(1, i, t) for t, i in enumerate(ids)])))
    assert got.item_id.dtype == np.int64 and got.item_id.tolist() == ids


def test_the_whole_column_decides_however_long_the_file(tmp_path):
    "Letters below the first hundred thousand lines: no block of the file has a type of its own."
    rows = [(1, i % 50 + 1, i) for i in range(300_000)] + [(1, 'B00ABC', 300_000), (1, 7, 300_001)]
    got = load(written(tmp_path, log(rows)))
    assert (
        got.item_id.nunique() == 51 and got.item_id.tolist()[-2:] == ['B00ABC', '7'] and got.user_id.dtype == np.int64
    )


def test_only_an_empty_field_is_missing(tmp_path):
    for line, what in (
        ('1,,3', 'item_id'),
        (',1,3', 'user_id'),
        ('1,"",3', 'item_id'),
        ('1,2,', 'timestamp'),
        ('1,2, ', 'timestamp'),
    ):
        with pytest.raises(DataError, match=f'mine.csv, line 4: {what} is missing'):
            load(written(tmp_path, f'user_id,item_id,timestamp\n1,2,3\n\n{line}\n'))


# -- the form of a file --


@pytest.mark.parametrize(
    'text, message',
    [
        ('', 'mine.csv: empty'),
        ('\n\n', 'line 1: no names of columns'),
        ('user_id,item_id\n', 'no interactions'),
        ('user_id,item_id,rating\n1,105,5,1600000000\n', 'line 2: 4 fields, the header names 3'),
        ('user_id,item_id\n1,2\n\n\n3\n', 'line 5: 1 fields, the header names 2'),
        ('user_id,item_id,user_id\n1,2,3\n', "line 1: two columns are called 'user_id'"),
        ('user_id,item_id\n1,2\nuser_id,item_id\n1,3\n', 'line 3: the header again'),
        ('user_id,item_id,timestamp\n1,2,3\nTotal,,240\n', "line 3: user_id is 'Total': a line of totals"),
        ('user_id,item_id,timestamp\n1,2,3\nGrand total,1,240\n', "line 3: user_id is 'Grand total': a line of totals"),
        ('user_id,item_id\n1,2\n"3,4\n', 'line 3'),
        (
            'user_id,film\n1,2\n',
            "no column 'item_id' among user_id, film; name them: --columns user_id=user_id,item_id=film",
        ),
        ('visitorid,itemid,event,ts\n1,2,view,3\n', '--columns user_id=visitorid,item_id=itemid,timestamp=ts'),
        ('1::2::3::4\n', "no column 'user_id' and no 'item_id' among 1::2::3::4"),
    ],
)
def test_the_form_is_checked_not_guessed(tmp_path, text, message):
    with pytest.raises(DataError) as e:
        load(written(tmp_path, text))
    assert message in str(e.value) and 'mine.csv' in str(e.value) and '\n' not in str(e.value)


def test_text_in_another_encoding_is_named_by_line_or_read(tmp_path):
    rows = log([('zoë', 'thé', 5), ('ann', 'thé', 6)])
    with pytest.raises(DataError, match='mine.csv, line 2: not UTF-8 text'):
        load(written(tmp_path, rows.encode('latin-1')))
    for encoding in ('utf-8', 'utf-8-sig', 'utf-16'):
        assert load(written(tmp_path, rows.encode(encoding))).user_id.tolist() == ['zoë', 'ann']


FORMS = {'.csv': ',', '.tsv': '\t', '.txt': '|', '.inter': '\t'}


@pytest.mark.parametrize('packing', ['', '.gz', '.zst'])
@pytest.mark.parametrize('ending', FORMS)
def test_every_form_of_text_is_the_same_data(tmp_path, ending, packing):
    header = 'user_id:token,item_id:token,timestamp:float' if ending == '.inter' else 'user_id,item_id,timestamp'
    text = log(walk(), header, FORMS[ending]).encode()
    with (
        pa.CompressedOutputStream(str(tmp_path / f'log{ending}{packing}'), {'.gz': 'gzip', '.zst': 'zstd'}[packing])
        if packing
        else open(tmp_path / f'log{ending}', 'wb') as f
    ):
        f.write(text)
    got = load(tmp_path / f'log{ending}{packing}')
    assert content_sha256(got) == content_sha256(load(written(tmp_path, log(walk()), 'plain.csv')))


def test_parquet_folders_and_frames_are_the_same_data(tmp_path):
    frame = pd.DataFrame(walk(), columns=['user_id', 'item_id', 'timestamp'])
    (tmp_path / 'parts').mkdir()
    for i in range(3):
        frame[i * 16 : (i + 1) * 16].to_parquet(tmp_path / 'parts' / f'{i}.parquet')
    (tmp_path / 'parts' / '_SUCCESS').write_text('')
    frame.to_parquet(tmp_path / 'one.parquet')
    table = pa.Table.from_pandas(frame)

    class Interchange:
        def __dataframe__(self, *args, **kwargs):
            return frame.__dataframe__(*args, **kwargs)

    ways = [
        tmp_path / 'parts',
        tmp_path / 'one.parquet',
        frame,
        table,
        Interchange(),
        frame.set_index(np.arange(len(frame)) * 3),
    ]
    assert len({content_sha256(load(w)) for w in ways} | {content_sha256(load(written(tmp_path, log(walk()))))}) == 1


def test_polars_frames_are_read_where_polars_is_there():
    polars = pytest.importorskip('polars', reason='polars is not installed, and nothing here needs it')
    frame = polars.DataFrame(dict(user_id=['ann', 'bob'], item_id=[1, 2]))
    assert load(frame).user_id.tolist() == ['ann', 'bob']


def test_a_folder_whose_files_disagree_is_refused(tmp_path):
    pd.DataFrame(dict(user_id=[1], item_id=[2])).to_parquet(tmp_path / 'a.parquet')
    pd.DataFrame(dict(user_id=['x'], item_id=[2])).to_parquet(tmp_path / 'b.parquet')
    with pytest.raises(DataError, match='its files differ'):
        load(str(tmp_path))
    with pytest.raises(DataError, match='a folder without parquet'):
        load(str(written(tmp_path, 'x', 'e/x.txt') if (tmp_path / 'e').mkdir() else tmp_path / 'e'))


@pytest.mark.parametrize(
    'values, message',
    [
        ([1, 'two'], 'user_id holds int, str'),
        ([1.0, 2.5], 'user_id holds double, wanted whole numbers or text'),
        ([True, False], 'user_id holds bool'),
        ([b'a', b'b'], 'user_id holds bytes'),
        ([None, 'a'], 'row 0: user_id is missing'),
        ([1.0, np.nan], 'row 1: user_id is missing'),
        (['', 'a'], 'row 0: user_id is missing'),
        ([[1], [2]], 'user_id holds list'),
        (pd.to_datetime(['2024-01-01', '2024-01-02']), 'wanted whole numbers or text'),
    ],
)
def test_what_is_no_id_in_a_frame_is_refused(values, message):
    with pytest.raises(DataError, match=message):
        load(pd.DataFrame(dict(user_id=values, item_id=[1, 2])))


@pytest.mark.parametrize(
    'values, kept',
    [
        ([1.0, 2.0], [1, 2]),
        (pd.Series([1, 2], dtype='Int32'), [1, 2]),
        (np.array([1, 2**64 - 1], np.uint64), ['1', str(2**64 - 1)]),
        (pd.Categorical(['b', 'a']), ['b', 'a']),
        (['1', '2'], ['1', '2']),
        (pd.Series(['x', 'y'], dtype='string'), ['x', 'y']),
        ([uuid.UUID(int=1), uuid.UUID(int=2)], [str(uuid.UUID(int=i)) for i in (1, 2)]),
    ],
)
def test_ids_of_a_frame_stay_what_they_are(values, kept):
    assert load(pd.DataFrame(dict(user_id=values, item_id=[1, 2]))).user_id.tolist() == kept


# -- names of columns --


def test_columns_can_be_named_in_every_way(tmp_path):
    file = written(tmp_path, log(walk(), 'visitorid,itemid,ts'))
    text = 'user_id=visitorid,item_id=itemid,timestamp=ts'
    named = [load(file, columns=c) for c in (text, dict(p.split('=') for p in text.split(',')))]
    assert named[0].equals(named[1]) and list(named[0]) == ['user_id', 'item_id', 'timestamp']
    assert 'timestamp' not in load(file, columns='user_id=visitorid,timestamp=')
    with pytest.raises(DataError, match='columns: user_id=user, but the file has visitorid, itemid, ts'):
        load(file, columns='user_id=user')
    with pytest.raises(ConfigError, match="columns: got 'who=visitorid'"):
        load(file, columns='who=visitorid')
    with pytest.raises(ConfigError, match="'visitorid' is named for user_id and item_id"):
        load(file, columns='user_id=visitorid,item_id=visitorid')


def test_common_names_are_recognised_and_said(tmp_path):
    said = []
    got = load(written(tmp_path, 'userId,movieId,rating,date\n1,2,good,2021-03-01T00:00:00\n'), say=said.append)
    assert got.timestamp.tolist() == [1_614_556_800] and list(got) == ['user_id', 'item_id', 'timestamp'], (
        'a rating that nothing uses is not read'
    )
    assert said == [
        'columns taken: user_id=userId, item_id=movieId, timestamp=date',
        'times are dates, read as seconds',
    ]


def test_two_columns_that_may_be_meant_are_not_chosen_between(tmp_path):
    with pytest.raises(DataError, match='timestamp may be date or time; say which: --columns timestamp=date'):
        load(written(tmp_path, 'user,item,date,time\n1,2,3,4\n'))


# -- times --

WHEN = 1_600_000_000


@pytest.mark.parametrize(
    'values, unit',
    [
        (lambda s: s, 's'),
        (lambda s: f'{s}.0', 's'),
        (lambda s: s * 1000, 'ms'),
        (lambda s: s * 10**6, 'us'),
        (lambda s: s * 10**9, 'ns'),
        (lambda s: str(datetime.datetime.fromtimestamp(s, datetime.UTC)).replace('+00:00', ''), 'dates'),
        (lambda s: datetime.datetime.fromtimestamp(s, datetime.UTC).isoformat(), 'dates'),
        (
            lambda s: datetime.datetime.fromtimestamp(s, datetime.timezone(datetime.timedelta(hours=-3))).isoformat(),
            'dates',
        ),
    ],
)
def test_every_way_to_write_a_time_is_the_same_second(tmp_path, values, unit):
    when = [WHEN + 61 * i for i in range(5)]
    reading = read_interactions(written(tmp_path, log([(1, i, values(s)) for i, s in enumerate(when)])))
    assert reading.interactions.timestamp.tolist() == when and reading.facts['times'].startswith(unit + ',')


def test_types_that_frames_have_for_times():
    when = pd.to_datetime(['2020-09-13 12:26:40', '2020-09-13 12:26:41'])
    for values in (
        when,
        when.tz_localize('UTC').tz_convert('Asia/Tokyo'),
        when.astype('datetime64[s]'),
        [d.to_pydatetime() for d in when],
        pd.Series(when).astype('timestamp[ns][pyarrow]'),
    ):
        assert load(
            pd.DataFrame(dict(user_id=1, item_id=[1, 2], timestamp=values)), say=lambda _: None
        ).timestamp.tolist() == [WHEN, WHEN + 1]
    days = pd.DataFrame(dict(user_id=1, item_id=[1, 2], timestamp=[datetime.date(2020, 9, 13)] * 2))
    assert load(days, say=lambda _: None).timestamp.tolist() == [WHEN // DAY * DAY] * 2


@pytest.mark.parametrize(
    'values, message',
    [
        (['1600000000', '1600000000000'], r'mixes units: 1600000000 \(s, line 2\) and 1600000000000 \(ms, line 3\)'),
        (['1600000000', '0' * 0 + '2024-01-31'], 'numbers and dates are mixed'),
        (['2024-01-31T00:00:00', '2024-01-31T00:00:00Z'], 'with a time zone, unlike the first row'),
        (['4 May', '5'], "line 2: timestamp is '4 May', neither a number nor a date"),
        (['2023-02-29', '2023-03-01'], 'which no calendar has'),
        (['-5', '7'], 'line 2: timestamp is .*negative'),
        (['1969-12-31', '1970-01-02'], 'before 1970'),
        (['inf', '7'], 'neither a number'),
        (['1e300', '1e300'], 'timestamp is'),
        (['60000000000', '60000000001'], 'as s after the year 2100'),
        (['nan', '5'], 'neither a number'),
    ],
)
def test_times_that_cannot_be_meant_are_refused(tmp_path, values, message):
    with pytest.raises(DataError, match=message):
        load(written(tmp_path, log([(1, i, v) for i, v in enumerate(values)])))


def test_the_unit_can_be_said(tmp_path):
    file = written(tmp_path, log([(1, 1, 5000), (1, 2, 7000)]))
    assert [load(file, time_unit=u, say=lambda _: None).timestamp.tolist() for u in ('s', 'ms')] == [
        [5000, 7000],
        [5, 7],
    ]
    with pytest.raises(ConfigError, match="time_unit: got 'minutes'"):
        load(file, time_unit='minutes')
    assert load(written(tmp_path, log([(1, 1, 20200913)])), say=lambda _: None).timestamp.tolist() == [
        WHEN // DAY * DAY
    ], 'a date in eight digits'


def test_times_that_lost_their_last_bits_are_refused(tmp_path):
    seconds = np.sort(np.random.default_rng(0).integers(1_500_000_000, 1_700_000_000, 50))
    rounded = seconds.astype(np.float32).astype(np.int64)
    frame = lambda t: pd.DataFrame(dict(user_id=1, item_id=np.arange(len(t)), timestamp=t))
    with pytest.raises(DataError, match='rounded by a 32-bit float'):
        load(written(tmp_path, log([(1, i, t) for i, t in enumerate(rounded)])))
    with pytest.raises(DataError, match='holds float, which rounds'):
        load(frame(seconds.astype(np.float32)))
    with pytest.raises(DataError, match='a length of time'):
        load(frame(pd.to_timedelta(seconds, 's')))
    whole_days = np.r_[np.arange(49) * DAY + 1_600_000_000, 1_700_000_000]  # all of them 32-bit floats, and meant so
    for exact in (seconds, np.arange(50) * DAY + 1_600_000_000, np.arange(50) * 3600 + 1_600_000_000, whole_days):
        assert len(load(frame(exact))) == 50


def test_fractions_of_a_second_decide_what_came_first(tmp_path):
    got = load(written(tmp_path, log([(1, 'b', f'{WHEN}.7'), (1, 'a', f'{WHEN}.2'), (2, 'c', WHEN)])))
    assert got.item_id.tolist() == ['c', 'a', 'b'] and set(got.timestamp) == {WHEN}


# -- copies and repeats --


def test_exact_copies_are_dropped_kept_or_refused_and_said(tmp_path):
    file, said = written(tmp_path, log([r for r in walk() for _ in range(2)])), []
    assert len(load(file, say=said.append)) == len(walk()) and said == [
        '48 exact copies dropped (duplicates: drop; keep keeps them)'
    ]
    assert len(load(file, duplicates='keep')) == 2 * len(walk())
    with pytest.raises(
        DataError, match=r'line 3: repeats the user, item and time of an earlier row \(48 such rows of 96\)'
    ):
        load(file, duplicates='refuse')


def test_repeats_are_data(tmp_path):
    assert len(load(written(tmp_path, 'user_id,item_id\n1,2\n1,2\n'), say=lambda _: None)) == 2
    assert len(load(written(tmp_path, log([(1, 2, 5), (1, 2, 6)])))) == 2
    assert len(load(written(tmp_path, log([(1, 2, f'{WHEN}.1'), (1, 2, f'{WHEN}.2')])))) == 2, (
        'two moments of one second'
    )


# -- what was read has a name --


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    rows = walk()

    def sha(rows, name='a.csv', **more):
        return content_sha256(load(written(tmp_path, log(rows), name), say=lambda _: None, **more))

    assert sha(rows) == sha(rows, 'other.tsv'.replace('.tsv', '.csv.gz'))
    changed = [
        rows[:-1],
        rows[::-1],
        [(u, i + (t == rows[5][2] and u == 0), t) for u, i, t in rows],
        [(u, i, t + 1) for u, i, t in rows],
        [(f'0{u}', i, t) for u, i, t in rows],
    ]
    assert len({sha(r) for r in [rows, *changed]}) == 6
    assert content_sha256(pd.DataFrame(dict(user_id=['ab', 'c'], item_id=['x', 'y']))) != content_sha256(
        pd.DataFrame(dict(user_id=['a', 'bc'], item_id=['x', 'y']))
    )


# -- items, and other tables --


def test_items_follow_the_ids_of_the_interactions(tmp_path):
    file = written(
        tmp_path,
        'item_id,title\n0007,Tea\n7,Coffee\n,\n'.replace(',\n', '8,\n', 1).replace('\n8,\n', '\n8,\n'),
        'films.csv',
    )
    (tmp_path / 'films.csv').write_text('item_id,title\n0007,Tea\n7,Coffee\n8,\n')
    assert read_items(file, pd.Series(['0007', '7'])).title.tolist()[:2] == ['Tea', 'Coffee']
    assert read_items(file, pd.Series([7, 8])).to_dict('list')['title'][0] == 'Coffee'
    assert (
        load_items(str(tmp_path / 'x.csv'), items=str(file)).item_id.tolist() == ['0007', '7', '8']
        and load_items(str(file)) is None
    )
    with pytest.raises(DataError, match="no column 'item_id'"):
        read_items(written(tmp_path, 'film,title\n1,Tea\n', 'other.csv'))


def test_lists_of_another_system_are_read(tmp_path):
    got = read_columns(written(tmp_path, 'user_id;item_id;score\n07;a;.5\n7;a;1e-3\n'), numbers=('rank', 'score'))
    assert got.user_id.tolist() == ['07', '7'] and got.score.tolist() == [0.5, 0.001] and 'rank' not in got
    with pytest.raises(DataError, match="line 2: score is 'high', wanted a number"):
        read_columns(written(tmp_path, 'user_id,item_id,score\n1,2,high\n'), numbers=('score',))


def test_unknown_names_and_endings_say_what_there_is(tmp_path, monkeypatch):
    monkeypatch.setenv('MOLREC_DATA', str(tmp_path))
    (tmp_path / 'shop').mkdir()
    written(tmp_path, log(walk()), 'shop/interactions.csv')
    assert len(load('shop')) == 48
    with pytest.raises(DataError, match="'shpo': neither a known data set .*shop.* did you mean shop"):
        load('shpo')
    with pytest.raises(DataError, match='wanted a name ending in .csv'):
        load(written(tmp_path, 'x', 'notes.docx'))
    with pytest.raises(DataError, match='absent.csv: no such file'):
        load(tmp_path / 'absent.csv')
    assert kind_of('a.b.CSV.gz') == ('.csv', 'gzip')


# -- whatever comes --


def reference(path: Path):
    "Header and rows of a csv file by Python's own reader."
    text = path.read_bytes().decode(
        'utf-8-sig', errors='replace'
    )  # what is no text may stand in a column that is not read
    rows = [r for r in csv.reader(io.StringIO(text, newline='')) if r]
    return rows[0], rows[1:]


JUNK = [
    '\x00',
    '"',
    '""',
    ',',
    ',,',
    '\n',
    '\r',
    '\r\n',
    '\t',
    ';',
    '|',
    "'",
    'é',
    '\ufeff',
    ' ',
    '0',
    '-',
    '+',
    'e5',
    '.',
    'NA',
    'nan',
    'inf',
    '\\',
    '#',
    '1e999',
    '99999999999999999999',
    'user_id,item_id,timestamp\n',
    'Total,,9\n',
    '\u2028',
    '2024-01-31',
    '🙂',
]


def mangled(rng: random.Random) -> bytes:
    "A csv file to which something has happened."
    text = log(walk(3, 7, 4))
    for _ in range(rng.choice([1, 1, 2, 5])):
        at, what = rng.randrange(len(text) + 1), rng.random()
        if what < 0.6:
            text = text[:at] + rng.choice(JUNK) + text[at:]
        elif what < 0.8:
            text = text[:at] + text[at + rng.randrange(1, 12) :]
        elif what < 0.9:
            text = text[:at] + chr(rng.randrange(1, 0x300)) + text[at + 1 :]
        else:
            text = text[at:] + text[:at]
    raw = text.encode()
    if rng.random() < 0.1:
        raw = raw[: rng.randrange(len(raw) + 1)]
    if rng.random() < 0.1 and raw:
        raw = raw[: (at := rng.randrange(len(raw)))] + bytes([rng.randrange(256)]) + raw[at + 1 :]
    return raw


@pytest.mark.parametrize('seed', range(6))
def test_of_1500_odd_files_every_one_is_refused_or_read_as_it_stands(tmp_path, seed):
    "250 a seed. What is accepted has the rows, the ids and the times that Python's own csv reader sees: nothing moved, merged or lost."
    rng, accepted = random.Random(seed), 0
    for _ in range(250):
        path = written(tmp_path, mangled(rng))
        try:
            reading = read_interactions(path, duplicates='keep')
        except (DataError, ConfigError) as e:
            assert '\n' not in str(e) and 'mine.csv' in str(e) and 'Traceback' not in str(e)
            continue
        accepted += 1
        header, rows = reference(path)
        assert all(len(r) == len(header) for r in rows)
        got = reading.interactions
        at = {role: header.index(column) for role, column in reading.columns.items()}
        assert len(got) == len(rows)
        pairs = sorted(zip(map(str, got.user_id), map(str, got.item_id)))
        assert pairs == sorted((r[at['user_id']], r[at['item_id']]) for r in rows)
        if reading.facts['times'].startswith('s,'):
            assert sorted(got.timestamp) == sorted(int(float(r[at['timestamp']])) for r in rows)
    assert accepted > 20


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text(min_size=1, max_size=8), st.text(min_size=1, max_size=8)), min_size=1, max_size=20))
def test_text_ids_survive_a_csv_that_quotes_them(rows):
    "Any text but line breaks, surrogates and NUL, as csv writes it."
    clean = [tuple(''.join(c for c in t if c.isprintable() or c in '\t ') or 'x' for t in r) for r in rows]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'mine.csv'
        with open(path, 'w', newline='', encoding='utf-8') as f:
            csv.writer(f).writerows([('user_id', 'item_id'), *clean, ('end', 'end')])
        try:
            got = load(path, say=lambda _: None)
        except DataError as e:
            assert 'the header again' in str(e)
            return
    assert [tuple(map(str, r)) for r in got.itertuples(index=False)] == [*clean, ('end', 'end')]
