"The experiment notebooks through papermill and the command line, as a user runs them: one small row is trained once and every test looks at what it left."

import ast
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from molrec.base.errors import DataError
from molrec.cli import rows as cli_rows
from molrec.cli.execute import execute
from molrec.data.sets import load
from molrec.records.tables import check_record, metric_values, read_ranks
from molrec.report.build import build_report
from molrec.report.rows import read_runs
from molrec.settings.config import Config, choices, config_hash, groups, load_config, make_config, read_row, run_id

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'nbs' / 'configs'
ROWS = sorted(p for p in CONFIGS.glob('*/*.yaml'))
TRAIN, RESULTS = (ROOT / 'nbs' / 'experiments' / f'{name}.ipynb' for name in ('train', 'results'))
SMALL = dict(dim=8, ffn=8, n_blocks=1, epochs=1, n_negatives=16, max_length=20, patience=1)
MOLREC = [sys.executable, '-m', 'molrec']


def name(path):
    return str(path.relative_to(CONFIGS))


def small(**more):
    return [w for k, v in (SMALL | more).items() for w in ('-p', k, str(v))]


def molrec(*words, cwd=ROOT, **env):
    "The command in a process of its own."
    return subprocess.run(
        [*MOLREC, *map(str, words)], cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope='session')
def ml100k():
    "MovieLens 100K, from a folder of the user's, the cache or a source; without any, its tests are skipped."
    try:
        return load('ml-100k')
    except DataError as e:
        pytest.skip(f'MovieLens 100K is neither in MOLREC_DATA nor in the cache, and no source gives it: {e}')


@pytest.fixture(scope='session')
def trained(ml100k, tmp_path_factory):
    "A row trained at smoke scale by two processes at once: the folder of runs, and what both said."
    runs = tmp_path_factory.mktemp('runs')
    words = [
        *MOLREC,
        'run',
        str(CONFIGS / 'ml-1m' / 'sasrec-dot-last-out.yaml'),
        '--scale',
        'smoke',
        '--runs',
        str(runs),
        *small(),
    ]
    both = [
        subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    return runs, [(p.communicate(timeout=300), p.returncode) for p in both]


@pytest.fixture(scope='session')
def folder(trained):
    "The folder of the one run."
    found = [f.parent for f in trained[0].glob('*/record.json')]
    assert len(found) == 1, [said for (_, said), _ in trained[1]]
    return found[0]


@pytest.fixture(scope='session')
def record(folder):
    return json.loads((folder / 'record.json').read_text())


# -- a run --


def test_two_processes_at_the_same_row_leave_one_record_and_no_error(trained, folder):
    assert [status for _, status in trained[1]] == [0, 0]
    assert [out for (out, _), _ in trained[1] if 'HR@10' not in out] == []


def test_the_bar_of_the_inner_run_reaches_the_terminal(trained):
    assert any('step' in err and 'loss=' in err for (_, err), _ in trained[1])


def test_a_record_is_complete(record, folder):
    check_record(record, folder / 'record.json')
    wanted = dict(
        code='version commit dirty',
        environment='python torch numpy cpu cores memory_gib platform',
        split='fingerprint protocol tie_order n_users n_items n_test_users',
        metrics='valid test',
    )
    assert {k: [key for key in keys.split() if key not in record[k]] for k, keys in wanted.items()} == {
        k: [] for k in wanted
    }
    assert (
        record['wall_time_s'] > 0
        and record['peak_memory_mib'] > 0
        and record['n_parameters'] > 0
        and len(record['history']) == 1
    )


def test_a_record_says_what_was_asked_for(record, folder):
    config = Config(**record['config'])
    assert {k: record['config'][k] for k in SMALL} == SMALL and record['config']['dataset'] == 'ml-100k'
    assert folder.name == record['id'] == run_id(config) and record['config_hash'] == config_hash(config)


def test_a_record_holds_the_command_that_makes_it_again(record):
    assert record['command'].startswith('molrec run nbs/configs/ml-1m/sasrec-dot-last-out.yaml --scale smoke -p dim 8 ')


def test_metrics_come_from_the_stored_ranks(record, folder):
    ranks = read_ranks(folder / 'ranks.parquet')
    for metric, value in record['metrics']['test'].items():
        assert metric_values(ranks, metric).mean() == pytest.approx(value, abs=1e-12), metric


def test_hit_rate_recounted_by_hand(record, folder):
    pairs = pd.read_parquet(folder / 'ranks.parquet')
    assert (pairs['rank'] <= 10).groupby(pairs.user_id).any().mean() == pytest.approx(
        record['metrics']['test']['hr@10']
    )


def test_ranks_carry_the_ids_of_the_source(folder, ml100k):
    pairs = pd.read_parquet(folder / 'ranks.parquet')
    last = (
        ml100k.assign(row=range(len(ml100k)))
        .sort_values(['user_id', 'timestamp', 'row'])
        .groupby('user_id')
        .item_id.last()
    )
    assert dict(zip(pairs.user_id, pairs.item_id)) == last.to_dict()


def test_the_executed_notebook_is_kept_and_shows_no_error(folder):
    cells = json.loads((folder / 'run.ipynb').read_text())['cells']
    assert [o for c in cells for o in c.get('outputs', []) if o['output_type'] == 'error'] == []
    assert any('image/png' in o.get('data', {}) for c in cells for o in c.get('outputs', [])), 'no curve'


def test_nothing_is_left_aside(folder):
    assert sorted(p.name for p in folder.iterdir() if p.name != '.lock') == [
        'epochs.csv',
        'items.parquet',
        'model.safetensors',
        'ranks-public.parquet',
        'ranks.parquet',
        'record.json',
        'run.ipynb',
    ]


def test_a_recorded_row_is_skipped_within_seconds(trained, folder):
    before, began = (folder / 'record.json').stat().st_mtime_ns, time.monotonic()
    said = molrec(
        'run', CONFIGS / 'ml-1m' / 'sasrec-dot-last-out.yaml', '--scale', 'smoke', '--runs', trained[0], *small()
    )
    assert said.returncode == 0 and 'recorded already' in said.stdout and time.monotonic() - began < 10
    assert (folder / 'record.json').stat().st_mtime_ns == before


def test_a_renamed_row_is_the_same_run(trained):
    said = molrec(
        'run',
        CONFIGS / 'ml-1m' / 'sasrec-dot-last-out.yaml',
        '--scale',
        'smoke',
        '--runs',
        trained[0],
        *small(),
        '-p',
        'row',
        'mine',
    )
    assert 'recorded already' in said.stdout


# -- what is refused --

ROW = CONFIGS / 'ml-1m' / 'sasrec-dot.yaml'


@pytest.mark.parametrize(
    'words, part',
    [
        (('run', ROW, '-p', 'epoch', '2'), "unknown key 'epoch', did you mean 'epochs'?"),
        (('run', ROW, '-p', 'epochs', 'many'), "epochs: got 'many', wanted int"),
        (('run', ROW, '-p', 'lr', '-1'), 'lr: got'),
        (
            ('run', ROW, '-p', 'encoder', 'gru'),
            "encoder: got 'gru', nearest 'gru4rec'; wanted one of sasrec, hstu, gru4rec, bert4rec, svd, popularity",
        ),
        (('run', ROW, '-p', 'lr', '[1'), "cannot read the value '[1'"),
        (('run', 'nothing.yaml'), 'nothing.yaml: no such file'),
        (('data', 'ml-2m'), "'ml-2m': neither a known data set"),
        (('data', 'nothing.csv'), 'nothing.csv: no such file'),
    ],
)
def test_a_mistake_is_one_line_and_status_1(words, part):
    said = molrec(*words)
    assert (
        said.returncode == 1
        and said.stderr.count('\n') == 1
        and said.stderr.startswith('molrec: ')
        and part in said.stderr
    )


def test_a_key_nobody_knows_in_a_file_is_refused(tmp_path):
    (tmp_path / 'mine.yaml').write_text('similarity: mol\nlearning_rate: 0.1\n')
    said = molrec('run', tmp_path / 'mine.yaml')
    assert said.returncode == 1 and "mine.yaml: unknown key 'learning_rate'" in said.stderr


def test_bad_data_are_one_line_too(tmp_path):
    (tmp_path / 'bad.csv').write_text('user_id,item_id,timestamp\n1,2,3\n1,,4\n')
    said = molrec('run', ROW, '--runs', tmp_path / 'runs', '-p', 'dataset', tmp_path / 'bad.csv')
    assert said.returncode == 1 and 'Traceback' not in said.stderr
    assert re.search(r'^molrec: .*bad\.csv, line 3: item_id is missing', said.stderr, re.M)
    assert not (tmp_path / 'runs').exists(), 'nothing is left of a run that could not begin'


def test_an_error_inside_the_notebook_is_one_line_too(tmp_path):
    said = molrec(
        'run',
        ROW,
        '--runs',
        tmp_path / 'runs',
        '-p',
        'dataset=ml-100k',
        '-p',
        'max_length=1',
        '-p',
        'dim=2000',
        '-p',
        'encoder=svd',
        '-p',
        'normalise=false',
    )
    if 'no source' in said.stderr:
        pytest.skip('MovieLens 100K cannot be had here')
    assert (
        said.returncode == 1
        and 'Traceback' not in said.stderr
        and re.search(r'^molrec: dim: got 2000, wanted 1 to \d+ for SVD', said.stderr, re.M)
    )
    assert list(tmp_path.glob('runs/*/record.json')) == []


def test_outside_a_checkout_nothing_recorded_is_said(tmp_path):
    said = molrec('report', cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert said.returncode == 1 and "no records of scale 'quick' in" in said.stderr and list(tmp_path.iterdir()) == []
    said = molrec('retrieval', cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert said.returncode == 1 and 'no run here has a head for stage 1; molrec run FILE' in said.stderr


@pytest.mark.parametrize('words', [(), ('fly',), ('run',), ('report', '--scale', 'huge'), ('bench', 'sorting')])
def test_what_cannot_be_typed_shows_the_usage(words):
    said = molrec(*words)
    assert said.returncode == 2 and said.stderr.startswith('usage: molrec')


# -- the report --


def test_the_report_is_built_from_the_small_record(trained, folder, tmp_path):
    files = build_report(trained[0], tmp_path, 'smoke')
    assert [f for f in files.values() if not f.exists()] == []
    assert 'SASRec, dot product' in files['markdown'].read_text()


@pytest.mark.parametrize('last_out', [True, False])
def test_the_results_notebook_runs_with_and_without_leave_last_one_out(trained, folder, tmp_path, last_out):
    runs = trained[0]
    if not last_out:
        pytest.importorskip('test_report').make_run(tmp_path / 'runs', 'SASRec, MoL + BCE', scale='smoke', users=40)
        runs = tmp_path / 'runs'
    execute(RESULTS, tmp_path / 'results.ipynb', dict(runs=str(runs), out=str(tmp_path), scale='smoke'))
    assert (tmp_path / 'results-smoke.html').exists() and (tmp_path / 'results.ipynb').exists()


def test_no_record_no_report(tmp_path):
    with pytest.raises(DataError, match='make report SCALE=smoke'):
        execute(RESULTS, tmp_path / 'results.ipynb', dict(runs=str(tmp_path), out=str(tmp_path), scale='smoke'))


def test_changed_rows_stand_under_their_own_name(trained, folder):
    assert re.fullmatch(r'SASRec, dot product \(dim=8, .*\)', read_runs(trained[0], 'smoke')[0].label)


# -- the notebook's parameters --


def parameters(notebook):
    "Name to (type, default, comment) of the cell that papermill fills."
    cell = next(c for c in json.loads(notebook.read_text())['cells'] if 'parameters' in c['metadata'].get('tags', []))
    lines, text = ''.join(cell['source']).splitlines(), ''.join(cell['source'])
    return {
        n.target.id: (ast.unparse(n.annotation), ast.literal_eval(n.value), lines[n.lineno - 1].partition('  # ')[2])
        for n in ast.parse(text).body
    }


def test_train_has_every_setting_with_its_default():
    "All that the run itself reads, and nothing that nobody declares; a part of one's own needs no line."
    wanted = {
        f.name: (f.type if isinstance(f.type, str) else f.type.__name__, f.default) for f in dataclasses.fields(Config)
    }
    found = parameters(TRAIN)
    said = {k: v[:2] for k, v in found.items() if k not in ('runs', 'command', 'track')}
    assert said == {k: v for k, v in wanted.items() if k in said}
    assert said.keys() >= {f.name for group in groups for f in dataclasses.fields(group)} and 'n_query' in said
    assert {k: found[k][:2] for k in ('runs', 'command', 'track')} == dict(
        runs=('str', 'work/runs'), command=('str', ''), track=('str', '')
    )
    assert [k for k, v in found.items() if not v[2]] == []


def test_papermill_reads_the_parameters_with_their_help():
    from papermill import inspect_notebook

    assert (
        inspect_notebook(str(TRAIN))['epochs']['help']
        and inspect_notebook(str(RESULTS))['scale']['inferred_type_name'] == 'str'
    )


# -- the rows --

SIMILARITY, LOSS = '|'.join(choices['similarity']), '|'.join(choices['loss'])


@pytest.mark.parametrize('path', ROWS, ids=name)
def test_a_row_loads_at_every_scale(path):
    for scale in choices['scale']:
        assert load_config(path, scale).scale == scale


@pytest.mark.parametrize('path', ROWS, ids=name)
def test_a_row_starts_with_the_command_that_runs_it(path):
    assert path.read_text().splitlines()[0] == f'# molrec run {path.relative_to(ROOT).as_posix()}'


@pytest.mark.parametrize('path', ROWS, ids=name)
def test_a_row_is_named_by_what_it_is(path):
    c = load_config(path)
    named = re.fullmatch(rf'({"|".join(choices["encoder"])})-({SIMILARITY})(?:-({LOSS}))?(-[a-z0-9-]+)?', path.stem)
    assert named and (named[1], named[2]) == (c.encoder, c.similarity) and named[3] in (None, c.loss)


@pytest.mark.parametrize('path', ROWS, ids=name)
def test_a_row_says_only_what_differs_from_the_defaults(path):
    identity, default = {'row', 'protocol', 'encoder', 'similarity', 'loss'}, dataclasses.asdict(Config())
    keys = read_row(path)[0]
    assert identity <= keys.keys() and {k for k, v in keys.items() if v == default[k]} <= identity


def test_rows_are_different_runs():
    for scale in choices['scale']:
        rows = [
            p for p in ROWS if scale != 'smoke' or p.parent.name == 'ml-1m'
        ]  # at smoke scale the others are not run
        assert len({run_id(load_config(p, scale)) for p in rows}) == len(rows)


def test_committed_records_keep_their_names():
    "A setting that came later must not rename the runs that do without it."
    records = [json.loads(f.read_text()) for f in sorted((ROOT / 'reports' / 'runs').glob('*/record.json'))]
    assert records and [r['id'] for r in records if run_id(make_config(r['config'])) != r['id']] == []


@pytest.mark.parametrize('path', [p for p in ROWS if p.parent.name != 'ml-1m'], ids=name)
def test_a_row_lies_with_its_data_set(path):
    assert load_config(path).dataset == path.parent.name


def test_smoke_leaves_out_other_data_sets():
    folders = {
        scale: {f.parent.name for f, _ in cli_rows.report_rows(ROOT, scale)} for scale in ('smoke', 'quick', 'paper')
    }
    every = {p.parent.name for p in ROWS if torch.cuda.is_available() or not read_row(p)[3]}
    assert folders == dict(smoke={'ml-1m'}, quick=every - {'amazon-books', 'ml-20m'}, paper=every)


def test_rows_whose_data_cannot_be_had_are_skipped_and_named(tmp_path, monkeypatch, capsys):
    ran = []

    def load(dataset):
        if dataset == 'amazon-games':
            raise DataError('amazon-games: no source worked. HTTP 503')

    def run_row(config, *given):
        ran.append(config.row)
        return dict(metrics=dict(test={'hr@10': 0.1}), wall_time_s=1.0)

    monkeypatch.setattr(cli_rows, 'where_data', lambda dataset: '')
    monkeypatch.setattr('molrec.data.sets.load', load)
    monkeypatch.setattr(cli_rows, 'run_row', run_row)
    cli_rows.run_missing(
        [(ROW, Config(row=f'row on {d}', dataset=d)) for d in ('amazon-beauty', 'amazon-games', 'ml-1m')],
        tmp_path,
        ROOT,
    )
    said = capsys.readouterr().out.splitlines()
    assert ran == ['row on amazon-beauty', 'row on ml-1m']
    assert (
        said[0]
        == 'skipped: row on amazon-games, because its data cannot be had: amazon-games: no source worked. HTTP 503'
    )
    assert said[1].startswith('3 rows, 0 recorded already, 2 to run')


def test_every_published_row_and_the_floor_are_there():
    from molrec.report.published import published, published_row

    rows = [dataclasses.asdict(load_config(p)) for p in ROWS]
    ours = [published_row(c).name for c in rows if c['protocol'] == 'global-time' and published_row(c) is not None]
    assert sorted(ours) == list(range(len(published))) and any(c['encoder'] == 'popularity' for c in rows)
    assert {c['similarity'] for c in rows if c['protocol'] == 'leave-last-one-out'} >= {'dot', 'mol'}


# -- the other commands --


def test_doctor_says_what_there_is():
    said = molrec('doctor')
    assert said.returncode == 0, said.stdout
    assert [
        w for w in ('python', 'threads', 'disk', 'kernel', 'git hooks', 'MOLREC_DATA', 'ml-1m') if w not in said.stdout
    ] == []


def test_doctor_finds_a_folder_of_data_that_is_not_there():
    said = molrec('doctor', MOLREC_DATA='no/such/folder')
    assert (
        said.returncode == 1
        and 'missing  MOLREC_DATA' in said.stdout
        and '-> MOLREC_DATA names no folder' in said.stdout
    )


def test_data_lists_the_catalogue_and_a_set(ml100k):
    assert [
        n
        for n in ('ml-100k', 'ml-1m', 'ml-20m', 'amazon-beauty', 'amazon-games', 'amazon-books')
        if n not in molrec('data').stdout
    ] == []
    said = molrec('data', 'ml-100k').stdout
    assert '943' in said and 'Harper' in said and 'GroupLens' in said


@pytest.mark.parametrize(
    'file', sorted((ROOT / 'reports' / 'checkpoints').glob('*.safetensors')), ids=lambda p: p.stem[-12:]
)
def test_a_checkpoint_gives_the_recorded_result(file, tmp_path):
    "What comes with the project is small, belongs to a record, and ranks as recorded."
    from molrec.tasks.evaluation import evaluate
    from molrec.tasks.loading import load_run

    run = ROOT / 'reports' / 'runs' / file.stem
    record = json.loads((run / 'record.json').read_text())
    assert file.stat().st_size <= 4 * 2**20
    (tmp_path / 'checkpoints').mkdir()
    (tmp_path / 'runs' / file.stem).mkdir(parents=True)
    shutil.copy(file, tmp_path / 'checkpoints')
    shutil.copy(run / 'record.json', tmp_path / 'runs' / file.stem)
    try:
        config, model, split = load_run(tmp_path / 'runs' / file.stem)
    except DataError as e:
        pytest.skip(f'the data cannot be had here: {e}')
    hr = (evaluate(model, split.test, config.max_length).ranks <= 10).mean()
    assert abs(hr - record['metrics']['test']['hr@10']) < 2e-3, (
        'ranks on another processor may differ by rounding, not by more'
    )


@pytest.mark.parametrize(
    'file', sorted((ROOT / 'reports' / 'checkpoints').glob('*.safetensors')), ids=lambda p: p.stem[-12:]
)
def test_what_is_served_is_what_was_recorded(file):
    "The query of the recorded evaluation, put to an index: the place of each test item in the list is its recorded rank, ties against the model."
    from molrec.records.tables import read_pairs
    from molrec.search.asked import make_index
    from molrec.search.lists import answered
    from molrec.tasks.loading import load_run

    run = ROOT / 'reports' / 'runs' / file.stem
    try:
        config, model, split = load_run(run)
    except DataError as e:
        pytest.skip(f'the data cannot be had here: {e}')
    rows = torch.randperm(len(split.test), generator=torch.Generator().manual_seed(0))[:60].numpy()
    scores, ids = answered(
        make_index(model, 'brute-force'), model, split.test.query.select(rows), split.n_items, config
    )
    targets = torch.as_tensor(split.test.targets.items[split.test.targets.offsets[rows]])
    own = scores.gather(1, (ids == targets[:, None]).int().argmax(1, keepdim=True))
    served = (scores >= own).sum(1).numpy()
    recorded = read_pairs(run / 'ranks.parquet')['rank'].to_numpy()[rows]
    off = abs(served - recorded) > 1 + recorded * 0.02  # near-ties, on another processor
    assert off.sum() <= 1, (served[off], recorded[off])
    assert abs((served <= 10).mean() - (recorded <= 10).mean()) < 0.04
