"From a model to a list: titles as people type them, `molrec search` and `molrec plan` as they are typed, on a small world that is trained once."

import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from film_world import SMALL, TITLES, write_world
from hypothesis import given, settings
from hypothesis import strategies as st

from molrec import Recommender
from molrec.base.errors import DataError
from molrec.cli import main as cli_main
from molrec.cli.plan import plan_table
from molrec.search import asked, titles
from molrec.search.index_costs import plan as index_plan
from molrec.settings.config import Config
from molrec.settings.parts import names
from molrec.similarities.mol import MoL
from molrec.tasks import loading
from molrec.tasks.runs import run

ROOT = Path(__file__).resolve().parents[2]
ITEMS = pd.DataFrame(dict(item_id=np.arange(30) + 101, title=TITLES, count=np.arange(30)))


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "Data with titles and without, and a run on each: the folder of runs, and their ids."
    folder, before = tmp_path_factory.mktemp('world'), os.environ.get('MOLREC_DATA')
    os.environ['MOLREC_DATA'] = str(folder)
    write_world(folder, 'ring', genres=True)
    write_world(folder, 'untitled', titles=False)
    rows = [
        Config(dataset='ring', similarity='mol', **SMALL),
        Config(dataset='ring', similarity='mol', head_width=8, **SMALL),
        Config(dataset='untitled', **SMALL),
    ]
    yield folder / 'runs', [run(c, folder / 'runs', progress=False)['id'] for c in rows]
    if before is None:
        del os.environ['MOLREC_DATA']
    else:
        os.environ['MOLREC_DATA'] = before


@pytest.fixture
def said(capsys):
    "What the command says: status, lines of output, lines of errors."

    def call(*words):
        capsys.readouterr()
        status = cli_main.main([str(w) for w in words])
        out = capsys.readouterr()
        return status, out.out.splitlines(), out.err.splitlines()

    return call


# -- titles --


@pytest.mark.parametrize(
    'typed, title',
    [
        ('Matrix, The (1999)', 'Matrix, The (1999)'),
        ('the matrix', 'Matrix, The (1999)'),
        ('MATRIX', 'Matrix, The (1999)'),
        ('The Matrix (1999)', 'Matrix, The (1999)'),
        ('matrix 1999', 'Matrix, The (1999)'),
        ('alien', 'Alien (1979)'),
        ('aliens', 'Aliens (1986)'),
        ('kid (1921)', 'Kid, The (1921)'),
        ('the kid 1921', 'Kid, The (1921)'),
        ('a bugs life', "Bug's Life, A (1998)"),
        ('les miserables', 'Misérables, Les (1995)'),
        ('the postman', 'Postino, Il (The Postman) (1994)'),
        ('il postino', 'Postino, Il (The Postman) (1994)'),
        ("l'avventura", "Avventura, L' (1960)"),
        ('avventura', "Avventura, L' (1960)"),
        ('se7en', 'Seven (Se7en) (1995)'),
        ('seven', 'Seven (Se7en) (1995)'),
        ('2001 a space odyssey', '2001: A Space Odyssey (1968)'),
        ('1984', '1984'),
        ('la confidential', 'L.A. Confidential (1997)'),
        ('thelma and louise', 'Thelma & Louise (1991)'),
        ('empire strikes back', 'Star Wars: Episode V - The Empire Strikes Back (1980)'),
        ('road warrior', 'Mad Max 2 (a.k.a. The Road Warrior) (1981)'),
    ],
)
def test_a_title_is_found_as_people_type_it(typed, title):
    assert ITEMS.title[titles.find_titles([typed], ITEMS)].tolist() == [title]


@pytest.mark.parametrize('title', TITLES)
def test_every_title_finds_itself_in_any_case(title):
    for typed in (title, title.lower(), title.upper(), f'  {title} '):
        assert TITLES[titles.fitting(typed, ITEMS)[0]] == title


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30))
def test_whatever_is_typed_is_found_or_refused(typed):
    try:
        assert len(titles.find_titles([typed], ITEMS)) == 1
    except DataError as e:
        assert 'no such title' in str(e)


def test_of_several_titles_the_most_popular_is_taken_and_it_is_said():
    remarks = []
    assert titles.find_titles(['kid', 'star wars'], ITEMS, remarks.append) == [4, 9]
    assert (
        "'kid' fits 2 titles; taken: Kid, The (2000), the most popular; not: Kid, The (1921)" == remarks[0]
        and len(remarks) == 2
    )
    swapped = ITEMS.assign(count=-ITEMS['count'])
    assert titles.find_titles(['kid', 'star wars'], swapped) == [3, 8]


@pytest.mark.parametrize('typed', ['the martix', 'matrix (1998)'])
def test_no_such_title_names_the_nearest(typed):
    with pytest.raises(DataError, match=re.escape(f'{typed!r}: no such title; the nearest are Matrix, The (1999)')):
        titles.find_titles([typed], ITEMS)
    assert len(titles.nearest_titles('film', ITEMS)) == 3


def test_items_without_a_title_do_not_stand_in_the_way():
    holes = ITEMS.assign(title=ITEMS.title.where(ITEMS.index != 2))
    assert titles.find_titles(['alien'], holes) == [0]
    with pytest.raises(DataError, match='no such title'):
        titles.find_titles(['matrix'], holes)


# -- lists --


def test_a_known_user_gets_what_they_have_not_seen(world):
    runs, (name, *_) = world
    seen = pd.read_parquet(runs.parent / 'ring' / 'interactions.parquet').query('user_id == 42').item_id
    table = Recommender.load(runs / name).recommend([42], k=30)
    assert (
        set(table.item_id) == set(range(101, 131)) - set(seen)
        and table['rank'].tolist() == list(range(1, len(table) + 1))
        and (table.score.diff()[1:] <= 0).all()
    )
    assert set(Recommender.load(runs / name).recommend([42], k=30, filter_seen=False).item_id) == set(range(101, 131))


def test_a_new_user_with_the_same_history_gets_the_same_list(world):
    runs, (name, *_) = world
    seen = (
        pd.read_parquet(runs.parent / 'ring' / 'interactions.parquet')
        .query('user_id == 42')
        .sort_values('timestamp')
        .item_id
    )
    one, other = (
        Recommender.load(runs / name).recommend([42], k=5),
        Recommender.load(runs / name).recommend(histories=seen.tolist(), k=5),
    )
    assert one.item_id.tolist() == other.item_id.tolist() and np.allclose(one.score, other.score, atol=1e-4)


def test_scores_are_the_models(world):
    runs, (name, *_) = world
    _, model, s = loading.load_run(runs / name)
    table = Recommender.load(runs / name).recommend(histories=['alien', 'matrix'], k=5, index='brute-force')
    with torch.no_grad():
        scores = model.similarity(asked.history_query(model, [[0, 2]]), model.encoder.items)[0]
    assert np.allclose(table.score, scores[[int(i) - 101 for i in table.item_id]], atol=1e-4)
    assert table.item_id.iloc[0] - 101 == scores.index_fill(0, torch.tensor([0, 2]), -torch.inf).argmax()


def test_histories_of_different_lengths_are_encoded_each_alone(world):
    runs, (name, *_) = world
    _, model, _ = loading.load_run(runs / name)
    histories = [[3], [1, 2, 3, 4], list(range(25)), [7, 7]]
    together = asked.history_query(model, histories)
    for i, h in enumerate(histories):
        assert torch.allclose(together[i], asked.history_query(model, [h])[0], atol=1e-5)


@pytest.mark.parametrize('index', names('index'))
def test_every_index_gives_a_list(world, index):
    runs, ids = world
    table = Recommender.load(runs / ids[1]).recommend(histories=['alien'], k=7, index=index)
    assert len(table) == 7 and table.item_id.is_unique and 101 not in set(table.item_id)


def test_left_to_itself_the_index_is_one_that_suits_the_run(world):
    runs, ids = world
    chosen = [type(asked.make_index(loading.load_run(runs / name)[1])).__name__ for name in ids]
    assert chosen == ['BruteForce', 'HIndexer', 'BruteForce']


# -- molrec search --


def test_search_prints_titles_with_scores(world, said):
    runs, (name, *_) = world
    status, out, err = said('search', name, '--user', 42, '-k', 4, '--runs', runs)
    assert (status, err) == (0, []) and out[0].startswith('user 42: 14 items, the latest ')
    assert out[2] == 'user 42' and re.fullmatch(r'rank +score +title +genres', out[3]) and len(out) == 8
    assert all(
        re.fullmatch(rf' *{i} +-?\d+\.\d{{3}}  .+\(\d{{4}}\) +Comedy, Drama', line) for i, line in enumerate(out[4:], 1)
    )


def test_search_with_a_history_says_which_title_was_taken(world, said):
    runs, (name, *_) = world
    status, out, err = said(
        'search', name, '--history', 'the MATRIX', '--history', 'kid', '-k', 3, '--runs', runs, '--index', 'brute-force'
    )
    assert (status, err) == (0, []) and out[0].startswith("'kid' fits 2 titles; taken: Kid, The (")
    assert out[2] == 'for this history' and len(out) == 7 and not any('Matrix' in line for line in out[3:])
    assert any(
        'Matrix' in line
        for line in said('search', name, '--history', 'the MATRIX', '--with-seen', '-k', 30, '--runs', runs)[1]
    )


def test_search_gives_every_user_a_list(world, said):
    runs, (name, *_) = world
    _, out, _ = said('search', name, '--user', 1, '--user', 2, '-k', 2, '--runs', runs)
    assert [line for line in out if re.fullmatch(r'user \d', line)] == ['user 1', 'user 2'] and len(out) == 12


def test_search_without_titles_shows_ids_and_says_so(world, said):
    runs, (*_, name) = world
    status, out, _ = said('search', name, '--history', 101, '-k', 3, '--runs', runs)
    assert status == 0 and out[0] == 'untitled has no titles: items are shown by their ids'
    assert (
        re.fullmatch(r'rank +score +item_id', out[3])
        and len(out) == 7
        and all(re.fullmatch(r' *\d +-?[\d.]+  1\d\d', line) for line in out[4:])
    )


@pytest.mark.parametrize(
    'form', [lambda runs, name: name, lambda runs, name: name[-12:], lambda runs, name: runs / name]
)
def test_a_run_has_several_names(world, said, form):
    runs, (name, *_) = world
    assert said('search', form(runs, name), '--user', 1, '-k', 1, '--runs', runs)[0] == 0


@pytest.mark.parametrize(
    'words, part',
    [
        (('no-such-run', '--user', 1), "'no-such-run': no such run; the nearest are "),
        (('own-', '--user', 1), "'own-' fits 3 runs"),
        (('RUN',), 'wanted --user ID, or --history TITLE'),
        (('RUN', '--user', 1, '--history', 'alien'), 'and not both'),
        (('RUN', '--user', 61), 'user 61: not among the 60 users'),
        (('RUN', '--history', 'the martix'), 'the nearest are Matrix, The (1999)'),
        (('RUN', '--user', 1, '-k', 0), 'k: got 0'),
        (('RUN', '--user', 1, '--index', 'faiss'), "index: got 'faiss'"),
        (('UNTITLED', '--history', 'alien'), 'item alien: not among the 30 items'),
    ],
)
def test_a_mistake_is_one_line_and_status_1(world, said, words, part):
    runs, names = world
    status, out, err = said(
        'search', *({'RUN': names[0], 'UNTITLED': names[-1]}.get(w, w) for w in words), '--runs', runs
    )
    assert status == 1 and len(err) == 1 and err[0].startswith('molrec: ') and part in err[0], (out, err)


def test_absent_weights_are_one_line_that_says_how_to_get_them(world, said, tmp_path):
    runs, (name, *_) = world
    (tmp_path / name).mkdir()
    (tmp_path / name / 'record.json').write_bytes((runs / name / 'record.json').read_bytes())
    status, _, err = said('search', tmp_path / name, '--user', 1)
    assert status == 1 and len(err) == 1 and 'train' in err[0]


# -- molrec plan --


def numbers(line):
    return [float(n) for n in re.findall(r'[\d.]+(?= |$)', line)][-2:]


@pytest.mark.parametrize('storage', ['fp32', 'bf16', 'int8', 'compact-bf16', 'compact-int8'])
@pytest.mark.parametrize('stage1, head_width', [('int8', 64), ('bf16', 32), ('none', 64)])
def test_plan_adds_up_to_what_the_index_says(said, storage, stage1, head_width):
    n = 10**8
    status, out, _ = said(
        'plan',
        '--items',
        n,
        '--storage',
        storage,
        '--stage1',
        stage1,
        '--head-width',
        head_width,
        '--mol',
        '4x2x32',
        '--dim',
        40,
    )
    parts = index_plan(n, MoL(40, 4, 2, 32), storage, None if stage1 == 'none' else stage1, head_width, 40)
    table = plan_table(n, parts)
    assert (
        status == 0
        and table.bytes_per_item['in all'] == sum(parts.values())
        and table.GiB['in all'] == pytest.approx(sum(parts.values()) * n / 2**30)
    )
    shown = {line[: len(part)]: numbers(line) for part in [*parts, 'in all'] for line in out if line.startswith(part)}
    assert {part: got[0] for part, got in shown.items()} == pytest.approx(table.bytes_per_item.to_dict(), abs=0.005)
    assert numbers(next(line for line in out if line.startswith('in all')))[1] == pytest.approx(
        table.GiB['in all'], abs=0.001
    )


def test_plan_says_whether_it_fits(said):
    assert said('plan', '--items', 1000)[1][-1].startswith('0.00 GiB fit this machine')
    assert 'do not fit this machine' in said('plan', '--items', 10**12)[1][-1]


@pytest.mark.parametrize(
    'words, part',
    [
        (('--items', 0), 'items: got 0'),
        (('--items', 5, '--mol', '8x4'), "mol: got '8x4'"),
        (('--items', 5, '--storage', 'zip'), 'storage'),
        (('--items', 5, '--stage1', 'zip'), 'zip'),
    ],
)
def test_a_plan_that_cannot_be_is_one_line(said, words, part):
    status, _, err = said('plan', *words)
    assert status == 1 and len(err) == 1 and part in err[0]
