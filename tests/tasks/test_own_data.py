"Data of one's own from the file to the record: small inputs that used to go wrong, catalogues of a few items, and the command line in a folder of one's own."

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from molrec.base.errors import ConfigError, DataError
from molrec.data.splits import split
from molrec.settings.config import Config, choices
from molrec.tasks.preparation import check_data, prepare
from molrec.tasks.runs import run

ROOT, DAY, START = Path(__file__).resolve().parents[2], 86_400, 1_600_000_000
SMALL = dict(
    dim=8,
    ffn=8,
    n_blocks=1,
    head_dim=4,
    epochs=1,
    n_negatives=4,
    embedder_negatives=4,
    share=8,
    max_length=8,
    batch_size=16,
    hidden=8,
    n_query=2,
    n_item=2,
    width=8,
    query_hidden=16,
    gate_hidden=8,
)
ELSEWHERE = ('head_dim', 'hidden', 'n_query', 'n_item', 'width', 'query_hidden', 'gate_hidden')
SMALL_DOT = {
    k: v for k, v in SMALL.items() if k not in ELSEWHERE
}  # what the default row, SASRec and a dot product, reads


def walk(users=24, items=20, n=8, name='{}'.format, who='{}'.format):
    "Users who walk around a ring of items, a step a day."
    return [(who(u), name((u * 3 + i) % items), START + i * DAY) for u in range(users) for i in range(n)]


def written(folder, rows, name='mine.csv', header='user_id,item_id,timestamp'):
    (folder / name).write_text('\n'.join([header, *(','.join(map(str, r)) for r in rows)]) + '\n')
    return str(folder / name)


def trained(file, folder, **more):
    return run(Config(dataset=file, **(SMALL | more)), folder / 'runs', progress=False)


# -- a run is what it was made of --


def test_the_same_path_with_other_rows_is_another_run_and_the_same_rows_elsewhere_the_same(tmp_path):
    file = written(tmp_path, walk())
    first = trained(file, tmp_path)
    moved = str(Path(file).rename(tmp_path / 'moved.csv'))
    assert trained(moved, tmp_path)['started'] == first['started']
    written(tmp_path, walk()[:-1])
    second = trained(file, tmp_path)
    assert second['id'] != first['id'] and second['config']['content'] != first['config']['content']
    Path(moved).write_text(Path(file).read_text())
    with pytest.raises(DataError, match='moved.csv: not the data of this run any more'):
        load_run_data(tmp_path / 'runs' / first['id'], moved)


def load_run_data(folder, moved):
    "The data of a run are asked for, and are not what they were."
    record = json.loads((folder / 'record.json').read_text())
    return prepare(Config(**(record['config'] | dict(dataset=moved))))


def test_a_run_on_a_frame_is_the_run_on_its_file(tmp_path):
    file = written(tmp_path, walk())
    frame = pd.read_csv(file)
    assert (
        run(Config(dataset='frame', **SMALL), tmp_path / 'runs', progress=False, interactions=frame)['id']
        == trained(file, tmp_path)['id']
    )
    assert len(list((tmp_path / 'runs').iterdir())) == 1


def test_what_was_recognised_is_noted_in_the_record(tmp_path):
    file = written(tmp_path, [r for r in walk(items=30) for _ in range(2)], header='user,item,ts')
    notes = trained(file, tmp_path)['notes']
    assert notes == [
        'columns taken: user_id=user, item_id=item, timestamp=ts',
        '192 exact copies dropped (duplicates: drop; keep keeps them)',
        'the catalogue has 30 items: metrics at 50, 100, 200, 500 are metrics at 30',
    ]


@pytest.mark.parametrize(
    'name, who',
    [
        ('B{:05d}'.format, 'A{:04d}'.format),
        ('{:04d}'.format, '{:05d}'.format),
        (
            lambda i: [
                'NA',
                'None',
                'null',
                'nan',
                'true',
                '+22',
                '22',
                '22.0',
                ' 22',
                '1e3',
                '1000',
                '18446744073709551615',
            ][i],
            '{}'.format,
        ),
    ],
)
def test_ids_come_back_as_they_were_written(tmp_path, name, who):
    rows = walk(items=12, name=name, who=who)
    record = trained(written(tmp_path, rows), tmp_path)
    folder = tmp_path / 'runs' / record['id']
    ranks, items = (pd.read_parquet(folder / f'{n}.parquet') for n in ('ranks', 'items'))
    assert set(ranks.user_id.astype(str)) == {r[0] for r in rows} and set(items.item_id.astype(str)) == {
        r[1] for r in rows
    }
    assert record['split']['n_items'] == 12


# -- before training, not after --


@pytest.mark.parametrize(
    'n, part, pairs', [(3, 'training', 0), (2, 'validation and test', 60), (1, 'training and validation and test', 0)]
)
def test_users_too_short_are_found_before_training(tmp_path, n, part, pairs):
    file = written(tmp_path, walk(users=60, n=n))
    with pytest.raises(
        DataError,
        match=f'nothing to use in {part}: training holds {pairs} next-item pairs of 60 users.*after no filter; leave-last-one-out takes the last event',
    ):
        trained(file, tmp_path)
    assert not (tmp_path / 'runs').exists() or list((tmp_path / 'runs').iterdir()) == [], (
        'no folder, no record of an untrained model'
    )
    assert check_data(Config(dataset=file))['leave-last-one-out'].startswith('would not run: ')


def test_a_filter_that_leaves_nothing_is_named(tmp_path):
    file = written(tmp_path, walk())
    for settings, message in (
        (dict(core=50), 'of 192 interactions none is left after core 50'),
        (dict(latest_per_user=2), 'after latest_per_user 2'),
        (dict(protocol='global-time'), 'global-time cuts all events'),
    ):
        with pytest.raises(DataError, match=message):
            trained(file, tmp_path, **settings)
    with pytest.raises(DataError, match="'no-such-set': neither a known data set"):
        trained('no-such-set', tmp_path)
    assert not (tmp_path / 'runs').exists() or list((tmp_path / 'runs').iterdir()) == []


@pytest.mark.parametrize('loss', choices['loss'])
@pytest.mark.parametrize('items', [9, 2])
def test_a_small_catalogue_trains_with_every_loss(tmp_path, loss, items):
    for more in (dict(), dict(similarity='mol', head_width=4), dict(share=1, deal=True), dict(encoder='bert4rec')):
        record = trained(written(tmp_path, walk(items=items)), tmp_path, loss=loss, **more)
        assert np.isfinite([e['loss'] for e in record['history']]).all() and record['split']['n_items'] == items
        assert all(0 <= v <= 1 for v in record['metrics']['test'].values())
        assert record['notes'][-1].startswith(f'the catalogue has {items} items: metrics at ')


def test_a_catalogue_of_one_item_is_refused_by_name_where_a_loss_compares(tmp_path):
    file = written(tmp_path, walk(items=1))
    for loss in choices['loss']:
        with pytest.raises(DataError, match=f'a catalogue of 1 item; {loss} compares an item with others'):
            trained(file, tmp_path, loss=loss)
    with pytest.raises(ConfigError, match='dim: got 8, wanted 1 to 0 for SVD'):
        trained(file, tmp_path, encoder='svd')
    assert trained(file, tmp_path, encoder='popularity', repeats='allow')['metrics']['test']['hr@1'] == 1


def test_popularity_and_svd_work_with_the_default_settings(tmp_path):
    rows = [
        (u, (u % 5 + i) % 20, START + i * DAY) for u in range(60) for i in range(8)
    ]  # items 5 to 9 are in most histories
    file = written(tmp_path, rows)
    for encoder in ('popularity', 'svd'):
        assert trained(file, tmp_path, encoder=encoder)['metrics']['test']['hr@10'] > 0, encoder


# -- repeats --


def repeating(users=60, items=12, n=60):
    "Users who come back to the same few items again and again."
    draw = np.random.default_rng(0)
    return [
        (u, int(draw.choice([u % items, (u + 1) % items, (u + 5) % items])), START + u + i * DAY)
        for u in range(users)
        for i in range(n)
    ]


@pytest.mark.parametrize('protocol', sorted({*choices['protocol']} - {'own-column'}))
@pytest.mark.parametrize('repeats', choices['repeats'])
def test_no_metric_exceeds_one_and_a_hit_is_what_a_list_can_hold(tmp_path, protocol, repeats):
    record = trained(written(tmp_path, repeating()), tmp_path, protocol=protocol, repeats=repeats, encoder='popularity')
    assert all(0 <= v <= 1 for v in record['metrics']['test'].values())
    hits = record['metrics']['test']['hr@10']
    few = protocol == 'held-out-users'  # six users are asked
    assert hits == 0 if repeats == 'exclude' else hits > (0 if few else 0.5), (
        'what a user has seen is excluded from lists and from hits, or from neither'
    )
    ranks = pd.read_parquet(tmp_path / 'runs' / record['id'] / 'ranks.parquet')
    assert not ranks.duplicated(['user_id', 'item_id']).any()


def test_a_part_asks_for_an_item_once(tmp_path):
    s = split(pd.DataFrame(repeating(), columns=['user_id', 'item_id', 'timestamp']), 'global-time')
    for part in (s.valid, s.test):
        assert len(part) and all(len(set(part.targets[i])) == len(part.targets[i]) for i in range(len(part)))


# -- the command, in a folder of one's own --


def molrec(*words, cwd, **env):
    return subprocess.run(
        [sys.executable, '-m', 'molrec', *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | dict(PYTHONPATH=str(ROOT)) | env,
    )


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A folder of one's own: a log with text users and unusual names, titles, and a run on them."
    folder = tmp_path_factory.mktemp('home')
    written(folder, [(f'v{u}', f'00{i}', t * 1000) for u, i, t in walk()], 'log.csv', 'visitorid,itemid,ts')
    (folder / 'titles.csv').write_text('item_id,title\n' + ''.join(f'00{i},Film <{i}> & "more"\n' for i in range(20)))
    words = [w for k, v in SMALL_DOT.items() for w in ('-p', f'{k}={v}')]
    return folder, molrec(
        'run', 'log.csv', '--columns', 'user_id=visitorid', '--items', 'titles.csv', *words, cwd=folder
    )


def test_check_says_what_was_understood(home):
    said = molrec('data', 'check', 'log.csv', '--columns', 'user_id=visitorid', '--items', 'titles.csv', cwd=home[0])
    assert said.returncode == 0, said.stderr
    for part in (
        '192',
        '24 (text)',
        '20 (text)',
        'ms, column',
        '2020-09-13',
        'copies               none',
        '20 of 20 are known, by title',
        'training holds 120 next-item pairs of 24 users',
        'would not run: ',
    ):
        assert part in said.stdout, part


def test_an_unknown_header_says_what_to_type(home):
    said = molrec('data', 'check', 'log.csv', cwd=home[0])
    assert (
        said.returncode == 1
        and said.stderr.count('\n') == 1
        and '--columns user_id=visitorid,item_id=itemid,timestamp=ts' in said.stderr
    )


def test_a_run_report_and_search_in_a_folder_of_ones_own(home):
    folder, said = home
    assert said.returncode == 0, said.stderr
    (record,) = (json.loads(f.read_text()) for f in folder.glob('reports/runs/*/record.json'))
    assert record['command'].startswith('molrec run log.csv -p columns user_id=visitorid -p items titles.csv ')
    again = molrec(
        'run',
        'log.csv',
        '--columns',
        'user_id=visitorid',
        *[w for k, v in SMALL_DOT.items() for w in ('-p', f'{k}={v}')],
        cwd=folder,
    )
    assert 'recorded already' in again.stdout, again.stderr
    built = molrec('report', cwd=folder)
    assert built.returncode == 0, built.stderr
    page = (folder / 'reports' / 'results.html').read_text()
    assert 'SASRec, dot product' in page
    found = molrec('search', record['id'][-6:], '--user', 'v3', '-k', '3', cwd=folder)
    assert found.returncode == 0 and found.stdout.count('Film <') >= 3, found.stderr + found.stdout
    (folder / 'log.csv').rename(folder / 'gone.csv')
    try:
        found = molrec('search', record['id'][-6:], '--history', 'Film <3> & "more"', '-k', '3', cwd=folder)
        assert found.returncode == 0 and 'Film <' in found.stdout, 'a history needs no data: ' + found.stderr
        asked = molrec('search', record['id'][-6:], '--user', 'v3', cwd=folder)
        assert asked.returncode == 1 and asked.stderr.count('\n') == 1 and 'log.csv: no such file' in asked.stderr
    finally:
        (folder / 'gone.csv').rename(folder / 'log.csv')


def test_unknown_data_leave_no_folder(tmp_path):
    said = molrec('run', ROOT / 'nbs' / 'configs' / 'ml-1m' / 'sasrec-dot.yaml', '-p', 'dataset=ml-2m', cwd=tmp_path)
    assert said.returncode == 1 and 'did you mean ml-20m' in said.stderr and list(tmp_path.iterdir()) == []


# -- what cannot be written --


@pytest.mark.parametrize(
    'words',
    [
        ('run', 'log.csv', '--columns', 'user_id=visitorid', '--runs', 'log.csv/runs'),
        ('report', '--out', 'log.csv/out'),
        ('report', '--runs', 'log.csv'),
    ],
)
def test_a_place_that_cannot_be_written_is_one_sentence(home, words):
    before = sorted(p.name for p in home[0].rglob('*') if 'reports' not in p.parts)
    said = molrec(*words, cwd=home[0])
    assert (
        said.returncode == 1
        and said.stderr.strip().count('\n') == 0
        and said.stderr.startswith('molrec: ')
        and 'log.csv' in said.stderr
    ), said.stderr
    assert sorted(p.name for p in home[0].rglob('*') if 'reports' not in p.parts) == before


def test_a_full_disk_a_closed_pipe_and_an_ascii_terminal(home):
    if not Path('/dev/full').exists():
        pytest.skip('no /dev/full on this system')
    command = f'"{sys.executable}" -m molrec data'
    shell = lambda text, **env: subprocess.run(
        ['bash', '-c', text],
        cwd=home[0],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | dict(PYTHONPATH=str(ROOT)) | env,
    )
    full = shell(f'{command} > /dev/full')
    assert full.returncode == 1 and full.stderr == 'molrec: No space left on device\n'
    closed = shell(f'{command} | true; exit ${{PIPESTATUS[0]}}')
    assert closed.returncode in (0, 1) and 'Traceback' not in closed.stderr
    odd = written(home[0], walk(who='é{}'.format), 'é.csv')
    ascii_only = shell(f'{command} check é.csv', PYTHONIOENCODING='ascii', PYTHONUTF8='0')
    assert ascii_only.returncode == 0 and 'Traceback' not in ascii_only.stderr, ascii_only.stderr
    Path(odd).unlink()
