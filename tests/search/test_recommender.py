"One object for the everyday job: ids as they are in the data, one path to every list, and a file of lists that survives being killed."

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from molrec import Recommender
from molrec.base.errors import ConfigError, DataError
from molrec.cli import main as cli
from molrec.data.examples import ring
from molrec.search import lists
from molrec.search.examples import small_mol
from molrec.search.list_files import request_key
from molrec.settings.config import Config
from molrec.settings.parts import names
from molrec.tasks.evaluation import evaluate
from molrec.tasks.loading import load_run

ROOT = Path(__file__).resolve().parents[2]
SMALL = {name: value for name, value in small_mol.items() if name not in ('similarity', 'dropout')}
SMALL |= dict(head_dim=8, epochs=2)


def small(**said):
    "Small settings, of those that the chosen parts have."
    owners = {f.name: f.metadata['owners'] for f in dataclasses.fields(Config)}
    said = SMALL | said
    chosen = {(kind, getattr(Config(**said), kind)) for kind in ('encoder', 'similarity', 'loss')}
    return {name: value for name, value in said.items() if not owners[name] or chosen & set(owners[name])}


START = 1_600_000_000


def walk(text: bool, users=60) -> pd.DataFrame:
    "People who walk around thirty films, an hour between two of them."
    seen = ring(users, first_item=101, start=START, step_s=3600)
    if text:
        seen = seen.assign(user_id=seen.user_id.map('00{}'.format), item_id=seen.item_id.map('B{}'.format))
    return seen


def titles(text: bool) -> pd.DataFrame:
    return pd.DataFrame(
        dict(
            item_id=[f'B{i}' if text else i for i in range(101, 131)],
            title=[f'Film {i} ({1900 + i})' for i in range(30)],
        )
    )


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "Files of one's own: whole numbers, and text with titles."
    folder = tmp_path_factory.mktemp('home')
    walk(False).to_csv(folder / 'numbers.csv', index=False)
    walk(True).to_csv(folder / 'texts.csv', index=False)
    titles(True).to_csv(folder / 'titles.csv', index=False)
    return folder


@pytest.fixture(scope='module')
def numbers(home):
    return Recommender.fit(home / 'numbers.csv', home / 'runs', progress=False, **small(similarity='mol'))


@pytest.fixture(scope='module')
def texts(home):
    return Recommender.fit(
        str(home / 'texts.csv'),
        home / 'runs',
        progress=False,
        items=str(home / 'titles.csv'),
        **small(similarity='mol'),
    )


@pytest.fixture(scope='module')
def timed(home):
    return Recommender.fit(home / 'numbers.csv', home / 'runs', progress=False, **small(encoder='hstu'))


def same(one, other):
    pd.testing.assert_frame_equal(one, other)


# -- ids belong to the user --


def test_text_ids_go_from_a_file_to_lists_and_back(home, texts, tmp_path):
    made = texts.recommend(['001', '0012'], k=5)
    assert (
        made.columns.tolist() == ['user_id', 'item_id', 'score', 'rank', 'title']
        and made.user_id.tolist() == ['001'] * 5 + ['0012'] * 5
    )
    assert made.item_id.str.fullmatch(r'B1[0-3]\d').all() and made['rank'].tolist() == [1, 2, 3, 4, 5] * 2
    assert made.title.tolist() == [titles(True).set_index('item_id').title[i] for i in made.item_id]
    kept = Recommender.load(texts.save(tmp_path / 'kept'))
    same(kept.recommend(['001', '0012'], k=5), made)
    assert kept.metrics == texts.metrics and kept.metrics['hr@10'] == texts.record['metrics']['test']['hr@10']


def test_ids_have_the_type_of_the_data(numbers, texts):
    assert numbers.recommend(12, k=1).dtypes[['user_id', 'item_id']].tolist() == [np.int64, np.int64]
    assert numbers.recommend(k=1).user_id.tolist() == list(range(1, 61)) and 'title' not in numbers.recommend(12)
    text = pd.Series(['a']).dtype
    assert (
        texts.recommend('0012', k=1).dtypes[['user_id', 'item_id']].tolist()
        == [text, text]
        == texts.recommend(k=1).dtypes[['user_id', 'item_id']].tolist()
    )


@pytest.mark.parametrize(
    'form',
    ['12', 12, np.int64(12), ['12'], (12,), {12}, np.array([12]), pd.Series([12]), torch.tensor([12]), [12, '12']],
)
def test_one_user_is_one_user_in_every_form(numbers, form):
    same(numbers.recommend(form, k=3), numbers.recommend([12], k=3))


def test_users_who_are_not_known_are_named(numbers, texts):
    with pytest.raises(
        DataError, match='user 61: not among the 60 users of this run, whose ids go from 1 to 60; the nearest is 60'
    ):
        numbers.recommend(61)
    with pytest.raises(DataError, match='users 61, ann, 99: not among the 60 users'):
        numbers.recommend([61, 3, 'ann', 99])
    with pytest.raises(DataError, match='user 12: not among the 60 users of this run'):
        texts.recommend(12)  # '0012' is another
    with pytest.raises(ConfigError, match="cold: got 'skip', wanted 'error' or 'popular'"):
        numbers.recommend(61, cold='skip')


def test_users_who_are_not_known_get_what_is_popular_by_choice(numbers):
    made = numbers.recommend([3, 61, 5], k=4, cold='popular', exclude={61: [101]})
    assert made.user_id.tolist() == [3] * 4 + [61] * 4 + [5] * 4
    counts = numbers.trained.items.set_index('item_id')['count'].drop(101).sort_values(ascending=False, kind='stable')
    assert (
        made.score[4:8].tolist() == counts.iloc[:4].tolist() and made.item_id[4:8].tolist() == counts.index[:4].tolist()
    )
    same(made[made.user_id != 61].reset_index(drop=True), numbers.recommend([3, 5], k=4))


# -- histories by hand --


def test_titles_and_ids_mean_the_same(texts):
    same(texts.recommend(histories=['film 3', 'Film 5 (1905)']), texts.recommend(histories=['B104', 'B106']))
    many = texts.recommend(histories=[['film 3'], ['B104', 'B106']], k=3)
    assert many.user_id.tolist() == [0] * 3 + [1] * 3
    named = texts.recommend(histories=dict(ann=['film 3'], bob=['B104', 'B106']), k=3)
    assert named.user_id.tolist() == ['ann'] * 3 + ['bob'] * 3 and named.item_id.tolist() == many.item_id.tolist()


def test_all_items_that_are_not_known_are_named_or_left_out(numbers, texts):
    with pytest.raises(DataError, match=r"'no such': no such title; .*; 'nor this': no such title"):
        texts.recommend(histories=['film 3', 'no such', 'nor this'])
    with pytest.raises(
        DataError, match='items 5, 999: not among the 30 items of this run, whose ids go from 101 to 130'
    ):
        numbers.recommend(histories=[[101, 5], [999]])
    said = []
    rec = Recommender(numbers.trained, say=said.append)
    same(rec.recommend(histories=[101, 5, 103], unknown='skip'), numbers.recommend(histories=[101, 103]))
    assert said == [
        'left out: item 5: not among the 30 items of this run, whose ids go from 101 to 130; the nearest is 101'
    ]
    with pytest.raises(DataError, match='histories: nothing is left of 1, wanted at least one item'):
        numbers.recommend(histories=[[101], [5]], unknown='skip')
    assert numbers.recommend(histories=[[101], [5]], unknown='skip', cold='popular', k=2).user_id.tolist() == [
        0,
        0,
        1,
        1,
    ]


def test_a_history_is_what_the_user_did(numbers, timed):
    for rec in (numbers, timed):
        own = walk(False).query('user_id == 42')
        known, by_hand = rec.recommend(42, k=30), rec.recommend(histories=list(zip(own.item_id, own.timestamp)), k=30)
        assert known.item_id.tolist() == by_hand.item_id.tolist() and np.allclose(known.score, by_hand.score, atol=1e-4)
        framed = rec.recommend(histories=own, k=30)
        assert framed.user_id.tolist() == [42] * len(framed) and framed.item_id.tolist() == known.item_id.tolist()


def test_times_that_are_not_said_are_evenly_spaced_and_that_is_said_once(timed):
    said = []
    rec = Recommender(timed.trained, say=said.append)
    first = rec.recommend(histories=[101, 103], k=5)
    rec.recommend(histories=[[104], [105, 106]], k=5)
    assert said == ['no times are known: events are taken to be 3,600 s apart, the median of the training data']
    same(first, rec.recommend(histories=[(101, START), (103, START + 3600)], k=5, at=START + 7200))
    later = rec.recommend(histories=[(101, START), (103, START + 3600)], k=5, at='2024-01-31T12:00')
    assert not np.allclose(first.score, later.score, atol=1e-4), 'the time of asking counts'


def test_a_run_without_its_data_answers_histories(home, numbers, tmp_path):
    kept = numbers.save(tmp_path / 'kept')
    file = home / 'numbers.csv'
    file.rename(home / 'gone.csv')
    try:
        alone = Recommender.load(kept)
        same(alone.recommend(histories=[101, 103]), numbers.recommend(histories=[101, 103]))
        with pytest.raises(DataError, match='numbers.csv: no such file'):
            alone.recommend(12)
        same(Recommender.load(kept, data=walk(False)).recommend(12), numbers.recommend(12))
        with pytest.raises(DataError, match='not the data of this run any more'):
            Recommender.load(kept, data=walk(False).iloc[:-1]).recommend(12)
    finally:
        (home / 'gone.csv').rename(file)


def test_a_frame_is_not_kept_and_that_is_said(tmp_path):
    rec = Recommender.fit(walk(True), items=titles(True), progress=False, encoder='svd', dim=8)
    made = rec.recommend('0012', k=3)
    alone = Recommender.load(rec.save(tmp_path / 'svd'))
    with pytest.raises(DataError, match='trained on a data frame, which no record keeps'):
        alone.recommend('0012')
    same(Recommender.load(tmp_path / 'svd', data=walk(True)).recommend('0012', k=3), made)
    assert made.title.notna().all()


# -- what may be shown --


def test_the_rule_of_exclude(numbers):
    whole = numbers.recommend([3, 5], k=30)

    def shown(exclude):
        return [set(part.item_id) for _, part in numbers.recommend([3, 5], k=30, exclude=exclude).groupby('user_id')]

    three, five = (set(part.item_id) for _, part in whole.groupby('user_id'))
    for all_of in ([101, 102], (101, 102), {'101', '102'}, np.array([101, 102]), pd.Series([101, 102])):
        assert shown(all_of) == [three - {101, 102}, five - {101, 102}]
    for each in (
        ([101, 102], [103, 104]),
        [[101, 102], (103, 104)],
        {3: [101, 102], '5': [103, 104]},
        np.array([[101, 102], [103, 104]]),
    ):
        assert shown(each) == [three - {101, 102}, five - {103, 104}]
    assert shown([[], None]) == shown(None) == shown([]) == shown([999]) == [three, five]
    with pytest.raises(DataError, match='exclude: 3 lists, wanted one for each of 2'):
        shown([[101], [102], [103]])
    with pytest.raises(DataError, match='exclude: nothing called 7 is asked about'):
        shown({7: [101]})


def test_allow_and_filter_seen(numbers):
    made = numbers.recommend([3, 5], k=30, allow=range(101, 111))
    seen = {u: set(part.item_id) for u, part in walk(False).groupby('user_id')}
    assert all(set(part.item_id) == set(range(101, 111)) - seen[u] for u, part in made.groupby('user_id'))
    assert set(numbers.recommend(3, k=30, filter_seen=False).item_id) == set(range(101, 131))
    with pytest.raises(DataError, match='allow: none of its 1 ids is among the 30 items'):
        numbers.recommend(3, allow=[7])


def test_lists_are_never_padded(numbers):
    seen = set(walk(False).query('user_id == 3').item_id)
    made = numbers.recommend(3, k=500)
    assert len(made) == 30 - len(seen) and np.isfinite(made.score).all() and made.item_id.is_unique
    assert len(numbers.recommend(3, exclude=range(101, 131))) == 0
    for nobody in (numbers.recommend([]), numbers.recommend(histories={})):
        assert len(nobody) == 0 and nobody.columns.tolist() == made.columns.tolist()


@pytest.mark.parametrize(
    'bad, message',
    [
        (dict(k=0), 'k: got 0'),
        (dict(k='3'), "k: got '3'"),
        (dict(k=True), 'k: got True'),
        (dict(index='faiss'), "index: got 'faiss'"),
        (dict(at='noon'), "at: got 'noon'"),
        (dict(unknown='drop', histories=[101], users=None), "unknown: got 'drop'"),
        (dict(histories=[101]), 'users or histories, and not both'),
    ],
)
def test_a_mistake_is_a_sentence(numbers, bad, message):
    with pytest.raises(ConfigError, match=message):
        numbers.recommend(**dict(users=3) | bad)


# -- one path --


@pytest.mark.parametrize('name', ['numbers', 'texts', 'timed'])
def test_everybody_is_each_user_alone(name, request, monkeypatch):
    "Items are the same; scores to the rounding of a batch's matrix products, of which the index adds nothing: given the query, a score is a function of its pair."
    rec = request.getfixturevalue(name)
    monkeypatch.setattr(lists, 'n_block', 16)
    together = rec.recommend(k=5)
    alone = pd.concat([rec.recommend(u, k=5) for u in together.user_id.unique()], ignore_index=True)
    assert together.item_id.tolist() == alone.item_id.tolist() and together.user_id.tolist() == alone.user_id.tolist()
    assert np.abs(together.score - alone.score).max() < 2e-5
    queries, index = torch.randn(40, 16, generator=torch.Generator().manual_seed(0)), rec.index()
    scores, ids = index.search(queries, 7)
    for i in range(40):
        assert all(torch.equal(a[i : i + 1], b) for a, b in zip((scores, ids), index.search(queries[i : i + 1], 7)))


@pytest.mark.parametrize('name', ['numbers', 'timed'])
def test_lists_rank_as_the_evaluation_did(name, request):
    rec = request.getfixturevalue(name)
    c, model, s = load_run(rec.trained.folder)
    asked = lists.Asked(s.user_ids[s.test.users], s.test.query, np.arange(len(s.test)))
    made = pd.concat(lists.list_blocks(rec.index('brute-force'), rec.trained, asked, 30))
    places = {(u, i): r for u, i, r in zip(made.user_id, made.item_id, made['rank'])}
    served = [places[u, i] for u, i in zip(asked.whose, s.item_ids[s.test.targets.items])]
    assert served == evaluate(model, s.test, c.max_length).ranks.tolist()


def test_search_shows_the_same_lists(home, texts, capsys):
    assert cli.main(['search', str(texts.trained.folder), '--user', '0012', '-k', '4']) == 0
    out = capsys.readouterr().out.splitlines()
    made = texts.recommend('0012', k=4)
    assert [line.split('  ')[-1].strip() for line in out[-4:]] == made.title.tolist() and [
        line.split()[1] for line in out[-4:]
    ] == made.score.map('{:.3f}'.format).tolist()


@pytest.mark.parametrize('index', names('index'))
def test_an_index_by_name_and_by_hand(numbers, index):
    rec = numbers
    by_name = rec.recommend([3, 5], k=5, index=index)
    same(by_name, rec.recommend([3, 5], k=5, index=rec.index(index)))
    assert by_name.groupby('user_id').size().tolist() == [5, 5]
    with pytest.raises(ConfigError):
        rec.index(index, no_such=3)


# -- likeness, new items, records --


def test_similar_items_are_others_by_the_item_side(numbers, texts):
    made = texts.similar('film 3', k=5)
    assert (
        made.similar_to.tolist() == ['B104'] * 5
        and 'B104' not in set(made.item_id)
        and (made.score.diff()[1:] <= 0).all()
        and made.score.between(-1, 1).all()
    )
    back = texts.similar(made.item_id[0], k=29).set_index('item_id').score
    assert np.isclose(back['B104'], made.score[0], atol=1e-6), 'the same from both sides'
    assert len(numbers.similar([101, '102'], k=99)) == 58
    with torch.no_grad():
        g = numbers.trained.model.similarity.item_side(numbers.trained.model.encoder.items)[0]
    best = numbers.similar(101, k=1)
    row = int(best.item_id[0]) - 101
    assert np.isclose(
        best.score[0], (g[0] * g[row]).sum(-1).mean(), atol=1e-5
    )  # the mean, over components, of their cosines


def test_popularity_knows_no_likeness(home):
    rec = Recommender.fit(home / 'numbers.csv', progress=False, encoder='popularity')
    with pytest.raises(ConfigError, match='similar: this model has one number for an item'):
        rec.similar(101)


@pytest.mark.parametrize('encoder', ['sasrec', 'hstu', 'gru4rec', 'bert4rec', 'svd'])
def test_items_that_came_later_are_shown_and_stand_in_histories(home, encoder):
    rec = Recommender.fit(
        home / 'numbers.csv',
        home / 'runs',
        progress=False,
        **small(encoder=encoder, epochs=1, similarity='dot', n_blocks=1),
    )
    rec._say = lambda remark: None
    before, built = rec.recommend(3, k=30), rec.index()
    rec.add_items([500, 501], like=[[101], [104, 105]])
    table = rec.trained.model.encoder.items
    assert torch.equal(table[30], table[0]) and torch.allclose(table[31], table[[3, 4]].mean(0))
    after = rec.recommend(3, k=40)
    assert {500, 501} <= set(after.item_id)
    same(
        after[~after.item_id.isin([500, 501])].drop(columns='rank').reset_index(drop=True), before.drop(columns='rank')
    )
    twin = (
        rec.recommend(histories=[103, 500], k=40),
        rec.recommend(histories=[103, 101], k=40),
    )  # 500 is 101 by another name
    assert np.allclose(
        *(t.set_index('item_id').score.reindex(range(110, 120)) for t in twin), atol=1e-5
    ) and 500 not in set(twin[0].item_id)
    assert not {500, 501} & set(
        rec.recommend(3, k=40, index=built).item_id
    )  # an index of one's own has what it was built with
    with pytest.raises(DataError, match='500: there already'):
        rec.add_items(500, like=[101])


def test_saving_is_whole_and_overwrites_nothing_else(numbers, texts, tmp_path):
    folder = numbers.save(tmp_path / 'a' / 'model')
    assert numbers.save(folder) == folder and [p.name for p in (tmp_path / 'a').iterdir()] == ['model']
    with pytest.raises(DataError, match='there is something under this name'):
        texts.save(folder)
    kept = (folder / 'model.safetensors').read_bytes()
    (folder / 'model.safetensors').write_bytes(bytes([kept[0] ^ 1]) + kept[1:])
    with pytest.raises(DataError, match='not the file that was sealed'):
        Recommender.load(folder)


def test_fit_says_what_it_does_not_know(home):
    with pytest.raises(ConfigError, match='epoch'):
        Recommender.fit(home / 'numbers.csv', epoch=3)
    with pytest.raises(DataError, match='no-such.csv: no such file'):
        Recommender.fit(home / 'no-such.csv')


# -- molrec recommend --


def molrec(*words, code='', cwd, **more):
    "The command in a process of its own, after some lines of code."
    return subprocess.Popen(
        [
            sys.executable,
            '-c',
            f'import sys\n{code}\nfrom molrec.cli.main import main; sys.exit(main())',
            *map(str, words),
        ],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | dict(PYTHONPATH=str(ROOT)) | more,
    )


@pytest.mark.parametrize('ending', ['csv', 'parquet'])
def test_lists_of_everybody_in_a_file(home, texts, tmp_path, ending, capsys):
    out = tmp_path / f'lists.{ending}'
    assert cli.main(['recommend', str(texts.trained.folder), '--all', '--k', '3', '--out', str(out)]) == 0
    assert capsys.readouterr().out.endswith(f'{out}: 180 rows, at most 3 for each of 60 users\n')
    made = pd.read_csv(out, dtype=dict(user_id=str)) if ending == 'csv' else pd.read_parquet(out)
    assert made.drop(columns='score').astype(str).equals(
        texts.recommend(k=3).drop(columns='score').astype(str)
    ) and np.allclose(made.score, texts.recommend(k=3).score)
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


def test_lists_of_some_and_of_people_who_are_not_known(numbers, tmp_path, capsys):
    (tmp_path / 'some.csv').write_text('user_id\n3\n61\n')
    out, run = tmp_path / 'lists.csv', str(numbers.trained.folder)
    words = ['recommend', run, '--users', str(tmp_path / 'some.csv'), '-k', '2', '--out', str(out)]
    assert cli.main(words) == 1 and 'user 61: not among' in capsys.readouterr().err and not out.exists()
    assert cli.main([*words, '--cold', 'popular', '--index', 'h-indexer', '--k-prime', '7']) == 0
    assert pd.read_csv(out).user_id.tolist() == [3, 3, 61, 61]
    assert (
        cli.main([*words, '--cold', 'popular', '--k-prime', '7']) == 1 and 'k_prime' in capsys.readouterr().err
    )  # brute force has none
    assert (
        cli.main(['recommend', run, '--all', '--out', str(tmp_path / 'lists.xlsx')]) == 1
        and 'lists.xlsx' in capsys.readouterr().err
    )
    for wrong in (['recommend', run, '--out', str(out)], ['recommend', run, '--all']):
        with pytest.raises(SystemExit) as stop:
            cli.main(wrong)
        assert stop.value.code == 2


def test_killed_half_way_it_goes_on_where_it_was(home, numbers, tmp_path):
    run, out = numbers.trained.folder, tmp_path / 'lists.parquet'
    slow = (
        'import time, molrec.search.lists as l, molrec.search.list_files as f\n'
        'l.n_block = f.n_block = 8\n'
        'b = l.lists_of\n'
        'def lists_of(*a): time.sleep({}); return b(*a)\n'
        'l.lists_of = lists_of'
    )
    first = molrec('recommend', run, '--all', '--out', out, code=slow.format(0.5), cwd=home)
    folder, end = None, time.monotonic() + 60
    while time.monotonic() < end and not (folder and (folder / 'part-000001.parquet').exists()):
        folder = next(tmp_path.glob('.molrec-parts-*'), None)
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    there = {p.name: p.stat().st_mtime_ns for p in folder.glob('part-*.parquet')}
    assert 2 <= len(there) < 8 and not out.exists()
    other = molrec(
        'recommend', run, '--all', '-k', '3', '--out', tmp_path / 'other.parquet', code=slow.format(0), cwd=home
    )
    kept = (
        'import os, molrec.search.list_files as f\n'
        'j = f.join_parts\n'
        'def join(parts, out, schema):\n'
        '    parts = list(parts); print({p.name: p.stat().st_mtime_ns for p in parts}); return j(parts, out, schema)\n'
        'f.join_parts = join'
    )
    again = molrec('recommend', run, '--all', '--out', out, code=slow.format(0) + '\n' + kept, cwd=home)
    said, errors = again.communicate(timeout=120)
    assert again.returncode == 0 and other.wait(timeout=120) == 0, errors
    assert there.items() <= eval(said.splitlines()[-2]).items(), 'parts that were there are not made again'
    same(pd.read_parquet(out), numbers.recommend(k=10).astype(pd.read_parquet(out).dtypes))
    assert len(pd.read_parquet(tmp_path / 'other.parquet')) == 180 and sorted(p.name for p in tmp_path.iterdir()) == [
        'lists.parquet',
        'other.parquet',
    ]


def test_parts_of_different_calls_never_meet(numbers, texts, timed):
    keys = [
        request_key(rec.trained, lists_asked(rec, **more), *settings)
        for rec, more, settings in [
            (numbers, {}, (10,)),
            (numbers, {}, (11,)),
            (numbers, dict(users=[3]), (10,)),
            (numbers, dict(users=[3], at=5), (10,)),
            (texts, {}, (10,)),
            (timed, {}, (10,)),
        ]
    ]
    assert len(set(keys)) == len(keys) and request_key(numbers.trained, lists_asked(numbers), 10) == keys[0]


def lists_asked(rec, **more):
    from molrec.search.recommender import ask_users

    return ask_users(rec.people, **more)


def test_two_processes_do_not_make_the_same_lists(numbers, tmp_path, capsys):
    from filelock import FileLock

    from molrec.search.list_files import rules_words

    out = tmp_path / 'lists.csv'
    key = request_key(numbers.trained, lists_asked(numbers), 10, rules_words(lists.Rules()), 'auto', None, 'error')
    (folder := tmp_path / f'.molrec-parts-{key}-lists.csv').mkdir()
    with FileLock(folder / '.lock'):
        assert cli.main(['recommend', str(numbers.trained.folder), '--all', '--out', str(out)]) == 1
    assert 'another process is making these lists' in capsys.readouterr().err and not out.exists()


# -- molrec search --


def test_search_says_where_nothing_is_left(home, capsys):
    everything = pd.concat(
        [walk(False, 59), pd.DataFrame(dict(user_id=60, item_id=range(101, 131), timestamp=START + np.arange(30)))]
    )
    everything.to_csv(home / 'full.csv', index=False)
    rec = Recommender.fit(home / 'full.csv', home / 'runs', progress=False, encoder='popularity')
    assert cli.main(['search', str(rec.trained.folder), '--user', '60', '--user', '3', '-k', '2']) == 0
    out = capsys.readouterr().out
    assert (
        'user 60\nnothing is left to show: all 30 items are in the history; --with-seen shows them again\n\nuser 3\nrank'
        in out
    )
    assert len(rec.recommend(60)) == 0


def test_search_leaves_out_what_is_not_known_by_choice(texts, capsys):
    words = ['search', str(texts.trained.folder), '--history', 'film 3', '--history', 'no such', '-k', '2']
    assert cli.main(words) == 1 and "'no such': no such title" in capsys.readouterr().err
    assert cli.main([*words, '--unknown', 'skip']) == 0 and capsys.readouterr().out.startswith(
        "left out: 'no such': no such title"
    )
