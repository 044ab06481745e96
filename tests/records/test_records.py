"Records: whatever is cut, changed or foreign is named, whatever is accepted can be shown, and a model needs nothing but its record."

import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from old_records import unsealed
from safetensors.torch import load_file, save_file

from molrec.base.errors import ConfigError, DataError
from molrec.base.files import file_sha256, write_json
from molrec.records import listing, tables
from molrec.records import run as records_run
from molrec.report import (
    blocks,
    build,
    comparisons,
    curves,
    exposure,
    insights,
    last_out,
    page,
    pairs,
    protocol,
    protocol_page,
    published,
    rows,
    sampled,
    variance,
)
from molrec.report.examples import make_run
from molrec.search.recommender import Recommender
from molrec.settings.config import Config
from molrec.tasks.loading import load_model, load_run
from molrec.tasks.preparation import prepare
from molrec.tasks.record import known_items
from molrec.tasks.retrieval import fit
from molrec.tasks.runs import run
from molrec.training.checkpoint import read_state

ROOT = Path(__file__).resolve().parents[2]
SMALL = dict(
    dataset='shop',
    dim=4,
    ffn=4,
    n_blocks=1,
    head_dim=4,
    max_length=8,
    epochs=1,
    batch_size=8,
    n_negatives=4,
    share=8,
    n_query=2,
    n_item=2,
    width=4,
    query_hidden=4,
    gate_hidden=4,
    hidden=4,
)
pytestmark = pytest.mark.filterwarnings('ignore:.*not sealed', 'ignore:passed over')


def write_shop(folder):
    "14 people with text ids who walk around 12 items with titles, as a folder of MOLREC_DATA."
    draw = np.random.default_rng(0)
    walk = (draw.integers(12, size=(14, 1)) + draw.integers(1, 3, (14, 6)).cumsum(1)) % 12
    rows = pd.DataFrame(
        dict(
            user_id=np.repeat([f'A{i:04}' for i in range(14)], 6),
            item_id=walk.ravel(),
            timestamp=np.tile(np.arange(6), 14),
        )
    )
    (folder / 'shop').mkdir()
    rows.assign(item_id='B' + rows.item_id.astype(str)).drop_duplicates(['user_id', 'item_id']).to_parquet(
        folder / 'shop' / 'interactions.parquet'
    )
    pd.DataFrame(
        dict(item_id=[f'B{i}' for i in range(12)], title=[f'Thing {i} ({1990 + i})' for i in range(12)])
    ).to_parquet(folder / 'shop' / 'items.parquet')


@pytest.fixture(scope='module')
def shop(tmp_path_factory):
    "The data, a run on it (its folder), and the state it passed through; MOLREC_DATA names the data."
    folder, patch = tmp_path_factory.mktemp('world'), pytest.MonkeyPatch()
    write_shop(folder)
    patch.setenv('MOLREC_DATA', str(folder))
    c = Config(similarity='mol', **SMALL)
    trained = folder / 'runs' / run(c, folder / 'runs', progress=False)['id']
    (folder / 'half').mkdir()
    fit(c, prepare(c), folder / 'half', progress=False)
    yield c, trained, folder / 'half' / 'state.safetensors'
    patch.undo()


def reseal(folder, **more):
    "Change a record and seal what came out, as somebody who means to deceive would."
    record = {k: v for k, v in tables.read_json(folder / 'record.json').items() if k != 'seal'} | more
    record['files'] = {name: file_sha256(folder / name) for name in record['files'] if (folder / name).exists()}
    write_json(folder / 'record.json', record | dict(seal=tables.seal_of(record)))


def readers(shop):
    "What reads each kind of file: file, and a function that gives a comparable value."
    c, folder, state = shop

    def saved():
        tensors, *texts = read_state(state)
        return {k: v.tolist() for k, v in tensors.items()}, *texts

    def both_tables():
        return [t.to_dict() for t in (lambda r: (r.targets, r.items))(records_run.read_run(folder))]

    return {
        'record.json': (folder / 'record.json', lambda: tables.read_record(folder)),
        'ranks.parquet': (folder / 'ranks.parquet', both_tables),
        'items.parquet': (folder / 'items.parquet', both_tables),
        'state.safetensors': (state, saved),
        'model.safetensors': (
            folder / 'model.safetensors',
            lambda: {k: v.tolist() for k, v in load_model(folder)[1].state_dict().items()},
        ),
    }


@pytest.fixture
def kept(shop, request):
    "A file that a test changes, its reader, what was in it and what the reader gave; it is whole again afterwards."
    file, read = readers(shop)[request.param]
    content, value = file.read_bytes(), read()
    yield file, read, content, value
    file.write_bytes(content)


every_kind = pytest.mark.parametrize(
    'kept', ['record.json', 'ranks.parquet', 'items.parquet', 'model.safetensors', 'state.safetensors'], indirect=True
)


def named_or_same(file, read, value):
    "Ours or nothing: an error that names the file, or exactly what was there."
    try:
        assert read() == value
    except DataError as e:
        assert file.name in str(e)


# -- bytes --


@every_kind
def test_a_changed_byte_is_named_or_changes_nothing(kept):
    file, read, content, value = kept
    draw = random.Random(0)
    for _ in range(550):
        changed = bytearray(content)
        changed[draw.randrange(len(content))] ^= draw.randrange(1, 256)
        file.write_bytes(changed)
        named_or_same(file, read, value)


@every_kind
def test_a_file_cut_anywhere_is_named(kept):
    file, read, content, value = kept
    step = 1 if file.suffix == '.json' else max(1, len(content) // 600)
    for length in sorted({*range(0, len(content), step), *range(len(content) - 50, len(content))}, reverse=True):
        os.truncate(file, length)
        named_or_same(file, read, value)
    with pytest.raises(DataError, match=file.name):
        read()


@every_kind
def test_what_is_no_such_file_is_named(kept):
    file, read, content, value = kept
    for foreign in (
        b'',
        b'null',
        b'{}',
        b'[]',
        b'\xff\xfe' + content,
        content * 2,
        b'PAR1',
        b'{"__metadata__": 1}',
        (2**40).to_bytes(8, 'little') + b'{}',
    ):
        file.write_bytes(foreign)
        with pytest.raises(DataError, match=file.name):
            read()
    file.unlink()
    with pytest.raises((DataError, ConfigError)):
        read()


def test_a_state_that_was_changed_is_said_and_not_trained_on(shop, tmp_path):
    c, _, state = shop
    content = bytearray(state.read_bytes())
    content[-5] ^= 4
    (tmp_path / state.name).write_bytes(content)
    with pytest.raises(DataError, match='state.safetensors.*remove it to start over'):
        fit(c, prepare(c), tmp_path, progress=False)


# -- json --


@pytest.mark.parametrize(
    'text, words',
    [
        ('{"id": 1, "id": 2}', "key 'id' comes twice"),
        ('{"a": NaN}', 'NaN is not JSON'),
        ('{"a": -Infinity}', '-Infinity is not JSON'),
        ('{"a": 1e999}', 'not finite'),
        ('{"a": 1' + '0' * 400 + '}', 'more than 63 bits'),
        ('{"a": 1' + '0' * 5_000 + '}', 'cannot be read'),
        ('[' * 200_000, 'cannot be read'),
        ('{"a":' * 500 + '1' + '}' * 500, 'nested too deep'),
        ('{"a": "\\ud800"}', 'cannot be read'),
        ('{"\\udfff": 1}', 'cannot be read'),
        ('\ufeff{}', 'cannot be read'),
        ('{} {}', 'cannot be read'),
    ],
)
def test_odd_json_is_refused(tmp_path, text, words):
    (tmp_path / 'record.json').write_bytes(text.encode('utf-8', 'surrogatepass'))
    with pytest.raises(DataError, match='record.json: ') as e:
        tables.read_record(tmp_path)
    assert words in str(e.value)


def test_a_folder_in_the_place_of_a_record_is_refused(tmp_path):
    (tmp_path / 'record.json').mkdir()
    with pytest.raises(DataError, match='record.json: cannot be read'):
        tables.read_record(tmp_path)


# -- types --


def places(value, path=()):
    "Every place inside a record."
    inside = value.items() if isinstance(value, dict) else list(enumerate(value))[:2] if isinstance(value, list) else ()
    for key, inner in inside:
        yield path + (key,)
        yield from places(inner, path + (key,))


def put(record, path, value):
    "A copy of a record with another value at a place; `Ellipsis` takes it away."
    record = json.loads(json.dumps(record))
    inner = record
    for key in path[:-1]:
        inner = inner[key]
    if value is Ellipsis:
        inner.pop(path[-1])
    else:
        inner[path[-1]] = value
    return record


def shown(run):
    "Whatever a page reads of a run."
    c = run.config
    (
        listing.run_facts(run),
        rows.block_of(run),
        rows.place(run),
        published.published_metrics(c),
        rows.method_of(c),
        page.run_details(run),
        blocks.section_title([run]),
    )
    (
        rows.settled([run]),
        last_out.read_their_way(run, 'ndcg@50'),
        last_out.negatives_text(c),
        blocks.readings_remark([run]),
        blocks.short_remark([run]),
        comparisons.drawn_remark(run),
        build.trial_lines([run]),
    )
    (
        insights.checklist([run]),
        curves.curves_table([run], least=1),
        pairs.validation(run),
        pairs.planned(run),
        insights.short(insights.checklist([run])),
    )
    protocol.epoch_table([run]), protocol.splits_table([run]), sampled.unseen(run.record), variance.family([run])


def test_no_page_fails_on_a_record_that_was_accepted(tmp_path):
    metrics = {'hr@10': 0.3, 'ndcg@10': 0.2}
    history = [
        dict(epoch=i, stage='joint', loss=1.0, time_s=1.0, positions_per_s=9, **{'valid_hr@10': 0.1}) for i in (1, 2)
    ]
    extra = dict(
        published_way=dict(epoch=2, metrics=metrics),
        other_epochs=dict(last=metrics, averaged=metrics),
        history=history,
        test_hr10_by_epoch=[[1, 0.2]],
    )
    folder = make_run(
        tmp_path, 'SASRec, dot product', similarity='dot', users=12, protocol='leave-last-one-out', **extra
    )
    record, accepted = unsealed(folder), 0
    for path in places(record):
        for value in (..., None, 'x', '', -1, 0, 2.5, 10**6, True, [], [1], {}, {'a': 1}):
            (folder / 'record.json').write_text(json.dumps(put(record, path, value)))
            try:
                run = records_run.read_run(folder)
            except DataError as e:
                assert 'record.json' in str(e) or 'ranks.parquet' in str(e)
                continue
            accepted += 1
            shown(run)
    assert accepted > 300


# -- ids that are text, and no data --


def test_text_ids_go_all_the_way(shop, tmp_path):
    c, folder, _ = shop
    found = records_run.read_run(folder)
    assert (
        found.ranks.users.tolist() == sorted(found.ranks.users)
        and found.ranks.users[0] == 'A0000'
        and found.targets.item_id.str.startswith('B').all()
    )
    assert found.items.title.tolist() == ['Thing ' + i[1:] + f' ({1990 + int(i[1:])})' for i in found.items.item_id]
    page = build.build_report(folder.parent, tmp_path)['html'].read_text()
    assert (
        'SASRec' in page
        and comparisons.paired_tests(
            [found, found.__class__(found.record, found.ranks, 'twin', targets=found.targets)], ('mrr',)
        ).p[0]
        == 1
    )
    insights.build_insights(folder.parent, tmp_path), exposure.target_groups(found)
    assert Recommender.load(folder).recommend(['A0003'], k=3).title.str.startswith('Thing').all()


def test_other_users_are_not_paired_though_their_places_are_the_same(shop):
    found = records_run.read_run(shop[1])
    others = dataclasses.replace(
        found, label='others', ranks=dataclasses.replace(found.ranks, users='Z' + found.ranks.users.astype(object))
    )
    with pytest.raises(DataError, match='tested on different users'):
        comparisons.paired_tests([found, others], ('mrr',))


def test_a_model_is_asked_without_its_data_from_any_folder(shop, tmp_path, monkeypatch):
    c, folder, _ = shop
    before = Recommender.load(folder).recommend(histories=['thing 3', 'thing 4'], k=5)
    moved = shutil.copytree(folder, tmp_path / 'my model')
    monkeypatch.delenv('MOLREC_DATA')
    monkeypatch.setenv('MOLREC_CACHE', str(tmp_path / 'cache'))
    monkeypatch.chdir(tmp_path)
    after = Recommender.load(moved).recommend(histories=['thing 3', 'thing 4'], k=5)
    pd.testing.assert_frame_equal(before, after)
    with pytest.raises(DataError, match="'shop'"):
        Recommender.load(moved).recommend(['A0003'])
    (moved / 'items.parquet').unlink()
    with pytest.raises(DataError, match='items.parquet: cannot be read'):
        load_model(moved)


def test_other_data_are_a_sentence(shop, tmp_path, monkeypatch):
    shutil.copytree(Path(os.environ['MOLREC_DATA']) / 'shop', tmp_path / 'shop')
    rows = pd.read_parquet(tmp_path / 'shop' / 'interactions.parquet')
    rows.head(-1).to_parquet(tmp_path / 'shop' / 'interactions.parquet')
    monkeypatch.setenv('MOLREC_DATA', str(tmp_path))
    with pytest.raises(DataError, match='shop: not the data of this run any more'):
        load_run(shop[1])


@pytest.mark.parametrize(
    'kind',
    [
        dict(encoder='sasrec', similarity='dot'),
        dict(encoder='hstu', similarity='dot'),
        dict(encoder='gru4rec', similarity='mlp'),
        dict(encoder='bert4rec', similarity='fm'),
        dict(encoder='svd', similarity='neuralfm'),
        dict(encoder='popularity', similarity='dot', normalise=False, temperature=1.0),
        dict(similarity='mol', n_uid=1, head_width=2),
        dict(similarity='mol', dot_start=True),
        dict(similarity='dot', final_norm=False, position_init='truncated-normal', train_fraction=0.5),
        dict(similarity='mol', position_init='truncated-normal', glu_init='xavier', gate_item_dropout=False),
    ],
    ids=lambda k: '-'.join(map(str, k.values())),
)
def test_every_kind_of_model_comes_back_from_its_record_alone(shop, tmp_path, kind):
    c = Config(**SMALL | kind)
    folder = tmp_path / run(c, tmp_path, progress=False)['id']
    state = torch.get_rng_state()
    _, model, items = load_model(folder)
    wanted = load_file(folder / 'model.safetensors')
    assert torch.equal(torch.get_rng_state(), state) and len(items) == 12
    assert {k: v.tolist() for k, v in model.state_dict().items()} == {k: v.tolist() for k, v in wanted.items()}
    assert load_run(folder)[2].fingerprint == tables.read_record(folder)['split']['fingerprint']


@pytest.mark.parametrize(
    'change, words',
    [
        (lambda name, t: t.half(), 'is torch.float16'),
        (lambda name, t: t.double(), 'is torch.float64'),
        (lambda name, t: t[..., :1].clone(), 'the model of its configuration has'),
        (lambda name, t: t * torch.nan, 'not finite'),
        (lambda name, t: None, 'no tensor'),
    ],
)
def test_weights_that_are_not_the_models_are_named(shop, tmp_path, change, words):
    folder = shutil.copytree(shop[1], tmp_path / 'copy')
    tensors = load_file(folder / 'model.safetensors')
    name = 'encoder.item_table.weight'
    changed = change(name, tensors.pop(name))
    header = dict(config=json.dumps(tables.read_record(folder)['config']))
    save_file(tensors | ({} if changed is None else {name: changed}), folder / 'model.safetensors', header)
    with pytest.raises(DataError, match='model.safetensors: not the file that was sealed'):
        load_model(folder)
    reseal(folder)
    with pytest.raises(DataError, match=f'model.safetensors: .*{words}'):
        load_model(folder)


def test_a_claim_of_a_billion_items_costs_nothing(shop, tmp_path):
    folder = shutil.copytree(shop[1], tmp_path / 'copy')
    reseal(folder, split=tables.read_record(folder)['split'] | dict(n_items=10**9))
    with pytest.raises(DataError, match='model.safetensors: encoder.item_table.weight'):
        load_model(folder)


def test_weights_of_another_run_are_named(shop, tmp_path):
    folder = shutil.copytree(shop[1], tmp_path / 'copy')
    reseal(folder, config=tables.read_record(folder)['config'] | dict(lr=0.5))
    with pytest.raises(DataError, match='weights of another run, which differs in lr'):
        load_model(folder)


def test_titles_of_the_catalogue_are_not_given_away(shop, tmp_path, monkeypatch):
    s = prepare(shop[0])
    assert 'title' in known_items(shop[0], s)
    shutil.copytree(Path(os.environ['MOLREC_DATA']) / 'shop', tmp_path / 'ml-1m')
    monkeypatch.setenv('MOLREC_DATA', str(tmp_path))
    assert known_items(Config(dataset='ml-1m'), s) is None
    assert [
        f for f in ROOT.glob('reports/*/*/items.parquet') if set(pd.read_parquet(f)) != {'item_id', 'trained', 'shown'}
    ] == []


# -- a folder of runs --


def three(folder):
    "Three runs, the second of which was cut."
    made = [
        make_run(folder, row, similarity=s, users=40, name=s, started=f'2026-11-2{i}T00:00:00+00:00')
        for i, (row, s) in enumerate(
            (('SASRec, MoL + BCE', 'mol'), ('SASRec, MLP + BCE', 'mlp'), ('SASRec, FM + BCE', 'fm'))
        )
    ]
    os.truncate(made[1] / 'record.json', 100)
    return made


def test_one_bad_record_is_named_and_does_not_block_the_page(tmp_path):
    three(tmp_path / 'runs')
    with pytest.warns(UserWarning, match='passed over: mlp/record.json: cannot be read'):
        files = build.build_report(tmp_path / 'runs', tmp_path)
    page, text = files['html'].read_text(), files['markdown'].read_text()
    for said in (page, text):
        assert (
            'Passed over' in said
            and 'mlp/record.json: cannot be read' in said
            and str(tmp_path) not in said
            and 'SASRec, FM + BCE' in said
        )
    insights.build_insights(tmp_path / 'runs', tmp_path), protocol_page.build_protocol(tmp_path / 'runs', tmp_path)


def test_only_bad_records_are_an_error(tmp_path):
    for folder in three(tmp_path):
        os.truncate(folder / 'record.json', 10)
    with pytest.raises(DataError, match='record.json: cannot be read.*none of the 3 records'):
        build.build_report(tmp_path, tmp_path / 'out')


def test_a_protocol_without_a_report_does_not_block_the_others(tmp_path):
    three(tmp_path)
    reseal(tmp_path / 'fm', config=tables.read_record(tmp_path / 'fm')['config'] | dict(protocol='random'))
    kept, trials, bad = rows.sort_records(tmp_path)
    assert (
        [r.record['id'] for r in kept] == ['mol']
        and set(bad) == {'mlp', 'fm'}
        and "no report for protocol 'random'" in bad['fm']
    )


def test_published_tables_show_published_rows(tmp_path):
    made = three(tmp_path / 'runs')
    make_run(
        tmp_path / 'runs',
        'SASRec, MoL + BCE',
        users=40,
        name='trial',
        config_hash='trial',
        started='2026-11-29T00:00:00+00:00',
        skill=3.0,
    )
    hash = tables.read_record(made[0])['config_hash']
    files = build.build_report(tmp_path / 'runs', tmp_path, rows={hash})
    text, table = files['markdown'].read_text(), pd.read_csv(files['report-2024 table'])
    assert 'Trials' in text and '| trial |' in text and 'Trials' in files['html'].read_text()
    stated = tables.read_record(made[0])['metrics']['test']['hr@10']
    assert table[(table.row == 'SASRec, MoL + BCE') & (table.metric == 'hr@10')].ours.iloc[0] == pytest.approx(
        stated, abs=1e-5
    )
    assert 'Trials' not in build.build_report(tmp_path / 'runs', tmp_path / 'all')['markdown'].read_text()
    with pytest.raises(DataError, match='no records of scale'):
        build.build_report(tmp_path / 'runs', tmp_path, rows={'another'})


def test_runs_are_listed_newest_first_and_bad_ones_named(tmp_path):
    three(tmp_path)
    table = listing.list_runs(tmp_path)
    assert (
        table['where'].tolist() == ['fm', 'mol', 'mlp']
        and table.note[2].startswith('mlp/record.json: cannot be read')
        and table.note[:2].tolist() == ['', '']
    )
    assert table['value'].notna().tolist() == [True, True, False] and len(listing.list_runs(tmp_path / 'nothing')) == 0
    seen = 'import sys; from molrec.records.listing import list_runs; list_runs(sys.argv[1]); print("torch" in sys.modules)'
    assert (
        subprocess.run(
            [sys.executable, '-c', seen, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        == 'False'
    )


def test_a_run_is_shown_with_the_state_of_its_files(shop, tmp_path):
    folder = shutil.copytree(shop[1], tmp_path / shop[1].name)
    (folder / 'model.safetensors').unlink()
    (folder / 'run.ipynb').write_text('{}')
    said = dict(line.split('  ', 1) for line in listing.show_run(folder).splitlines())
    said = {k.strip(): v.strip() for k, v in said.items()}
    assert (said['ranks.parquet'], said['model.safetensors'], said['run.ipynb']) == (
        'as sealed',
        'not here',
        'not sealed',
    ) and 'hr@10' in said['test']


# -- sealing --


def test_an_old_record_is_read_and_told_how_to_be_sealed(tmp_path):
    folder = make_run(tmp_path, 'SASRec, MoL + BCE', users=20)
    (folder / 'record.json').write_text(json.dumps(unsealed(folder)))
    with pytest.warns(UserWarning, match=f'not sealed.*molrec runs seal {folder}'):
        records_run.read_run(folder)
    records_run.seal_all(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert len(records_run.read_run(folder).ranks) == 20


def test_half_a_seal_is_no_seal(tmp_path):
    folder = make_run(tmp_path, 'SASRec, MoL + BCE', users=20)
    record = tables.read_record(folder)
    for key in ('seal', 'files'):
        (folder / 'record.json').write_text(json.dumps({k: v for k, v in record.items() if k != key}))
        with pytest.raises(DataError, match='not what was sealed'):
            tables.read_record(folder)


def test_what_was_changed_is_not_sealed(tmp_path):
    folder = make_run(tmp_path, 'SASRec, MoL + BCE', users=20)
    pairs = pd.read_parquet(folder / 'ranks.parquet')
    pairs.assign(user_id=pairs.user_id + 1).to_parquet(folder / 'ranks.parquet', index=False)
    with pytest.raises(DataError, match='ranks.parquet: not the file that was sealed'):
        records_run.seal(folder)
    (folder / 'record.json').write_text(json.dumps(unsealed(folder) | dict(ranks_sha256='0' * 64)))
    with pytest.raises(DataError, match='0 sealed, 1 not: .*ranks.parquet: not the file'):
        records_run.seal_all(tmp_path)


def test_weights_that_come_later_are_taken_up_and_kept_when_they_leave(tmp_path):
    folder = make_run(tmp_path / 'runs', 'SASRec, MoL + BCE', users=20)
    (tmp_path / 'checkpoints').mkdir()
    (zoo := tmp_path / 'checkpoints' / f'{folder.name}.safetensors').write_bytes(b'weights')
    assert records_run.seal(folder)['files']['model.safetensors'] == file_sha256(zoo)
    kept = file_sha256(zoo)
    zoo.unlink()
    assert records_run.seal(folder)['files']['model.safetensors'] == kept
    (folder / 'model.safetensors').write_bytes(b'other weights')
    with pytest.raises(DataError, match='model.safetensors: not the file that was sealed'):
        records_run.seal(folder)


def test_processes_that_seal_at_once_leave_one_good_record(tmp_path):
    folder = make_run(tmp_path, 'SASRec, MoL + BCE', users=20)
    again = 'import sys; from pathlib import Path; from molrec.records.run import seal\nfor i in range(15): Path(sys.argv[1], "run.ipynb").write_text("{}"); seal(sys.argv[1])'
    both = [
        subprocess.Popen([sys.executable, '-c', again, str(folder)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [p.communicate(timeout=120)[1] for p in both] == ['', '']
    assert (
        set(tables.read_record(folder)['files']) == {'ranks.parquet', 'run.ipynb'}
        and records_run.read_run(folder).notebook
    )
    assert sorted(f.name for f in folder.iterdir()) == ['.lock', 'ranks.parquet', 'record.json', 'run.ipynb']


# -- the committed records --

COMMITTED = sorted(ROOT.glob('reports/*/*/record.json'))


def test_committed_records_are_sealed_and_their_files_as_sealed():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        states = {f.parent.name: listing.file_states(f.parent, tables.read_record(f.parent)) for f in COMMITTED}
    assert (
        states
        and {
            name: s
            for name, s in states.items()
            if not set(s.values()) <= {'as sealed', 'not here'} or s['ranks.parquet'] != 'as sealed'
        }
        == {}
    )


def test_sealing_changed_nothing_that_was_measured():
    "Digests of the records as they were before there were seals, of all but the files, the seal, and what was measured of their weights later."
    later = 'files', 'public_rule', 'asked'
    measured = json.loads((ROOT / 'tests' / 'measured.json').read_text())
    now = {
        f'{f.parent.parent.name}/{f.parent.name}': {
            k: v for k, v in json.loads(f.read_text()).items() if k not in later
        }
        for f in COMMITTED
    }
    assert [name for name, digest in measured.items() if name in now and tables.seal_of(now[name]) != digest] == []
    assert set(measured) <= set(now)


def test_weights_of_the_zoo_are_those_of_their_records():
    for file in ROOT.glob('reports/checkpoints/*.safetensors'):
        assert tables.read_record(ROOT / 'reports' / 'runs' / file.stem)['files']['model.safetensors'] == file_sha256(
            file
        )
