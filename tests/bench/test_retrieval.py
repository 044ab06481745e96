"The recall and throughput notebooks through papermill, on a model that is trained here in a second."

import json
import os
from pathlib import Path

import pandas as pd
import pytest
from film_world import SMALL, write_world

from molrec.base.errors import ConfigError
from molrec.bench import retrieval_pages as retrieval
from molrec.cli import retrieval as cli_retrieval
from molrec.cli.execute import execute
from molrec.cli.place import Place
from molrec.settings.config import Config
from molrec.tasks.runs import run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "The folder of runs, and a run with a head."
    folder, before = tmp_path_factory.mktemp('retrieval'), os.environ.get('MOLREC_DATA')
    os.environ['MOLREC_DATA'] = str(folder)
    write_world(folder, 'ring')
    yield (
        folder / 'runs',
        run(Config(dataset='ring', similarity='mol', head_width=8, **SMALL), folder / 'runs', progress=False)['id'],
    )
    if before is None:
        del os.environ['MOLREC_DATA']
    else:
        os.environ['MOLREC_DATA'] = before


def executed(notebook, out, trained, **parameters):
    "Run an experiment notebook; what it wrote."
    runs, run_id = trained
    execute(
        ROOT / 'nbs' / 'experiments' / f'{notebook}.ipynb',
        out / f'{notebook}.ipynb',
        dict(run=run_id, runs=str(runs), out=str(out)) | parameters,
    )
    return sorted(f.name for f in out.iterdir())


def test_recall_writes_its_record_its_figure_and_the_heads(trained, tmp_path):
    made = executed('recall', tmp_path, trained, n_queries=20, k=5, heads=True)
    assert {
        'recall-ring.csv',
        'recall-ring.json',
        'recall-ring.svg',
        'recall-ring.png',
        'heads-ring.csv',
        'heads-ring.json',
    } <= set(made)
    table, about = retrieval.read_record(tmp_path, 'recall-ring')
    assert (
        set(table.method) == {'h-indexer', 'component-mean', 'per-component', 'combined'}
        and table.recall.between(0, 1).all()
    )
    assert (table.low <= table.recall).all() and (table.recall <= table.high).all()
    assert about['run'] == trained[1] and about['fingerprint'] and about['environment']['torch']
    heads = retrieval.read_record(tmp_path, 'heads-ring')[0]
    assert set(heads['head']) == {'trained together', 'distilled', 'frozen', 'component mean'}
    retrieval.build_pages(tmp_path)
    assert '![recall](recall.png)' in (tmp_path / 'README.md').read_text()


def test_ids_that_are_text(trained, tmp_path):
    "Ids as the Amazon readers give them: neither notebook, and no figure of theirs, needs numbers."
    rows = pd.read_parquet(trained[0].parent / 'ring' / 'interactions.parquet')
    rows.assign(user_id='A' + rows.user_id.astype(str), item_id='00' + rows.item_id.astype(str)).to_parquet(
        tmp_path / 'text.parquet'
    )
    made = run(
        Config(dataset=str(tmp_path / 'text.parquet'), similarity='mol', head_width=8, **SMALL),
        tmp_path / 'runs',
        progress=False,
    )['id']
    (tmp_path / 'out').mkdir()
    executed('recall', tmp_path / 'out', (tmp_path / 'runs', made), n_queries=20, k=5, name='recall-text')
    assert retrieval.read_record(tmp_path / 'out', 'recall-text')[0].recall.between(0, 1).all()
    executed(
        'throughput',
        tmp_path / 'out',
        (tmp_path / 'runs', made),
        largest=10_000,
        rounds=1,
        suffix='-text',
        parts='pools',
    )
    assert (retrieval.read_record(tmp_path / 'out', 'pools-text')[0].n_items == 10_000).any()


def test_recall_of_a_corpus_that_was_grown(trained, tmp_path):
    executed('recall', tmp_path, trained, n_queries=20, k=5, grow=400, name='recall-grown')
    table, about = retrieval.read_record(tmp_path, 'recall-grown')
    assert (table.n_items == 400).all() and about['grow'] == 400
    widest = table[table.k_prime == table.k_prime.max()]
    assert (widest.recall >= table[table.k_prime == table.k_prime.min()].recall.to_numpy()).all()


def test_throughput_writes_its_measurements(trained, tmp_path):
    made = executed(
        'throughput',
        tmp_path,
        trained,
        largest=10_000,
        pareto=2_000,
        rounds=1,
        suffix='-small',
        parts='pools ablation pareto',
    )
    assert {
        f'{name}-small.{kind}'
        for name in ('pools', 'ablation', 'ablation-wide', 'pareto')
        for kind in ('csv', 'json', 'png', 'svg')
    } <= set(made)
    pareto = retrieval.read_record(tmp_path, 'pareto-small')[0]
    assert {'brute-force', 'stage1-int8', 'faiss-flat', 'faiss-hnsw', 'usearch', 'component-mean'} <= set(pareto.method)
    assert (pareto.queries_per_s > 0).all() and pareto.recall.between(0, 1).all()
    ablation = retrieval.read_record(tmp_path, 'ablation-small')[0]
    assert ablation.published_factor.tolist() == [1, 1.16, 1.5, 2]


def test_a_run_without_a_head_is_refused(trained, tmp_path):
    plain = run(Config(dataset='ring', similarity='mol', **SMALL), trained[0], progress=False)['id']
    with pytest.raises(ConfigError, match='no head'):
        executed('recall', tmp_path, (trained[0], plain))


def test_measurements_that_are_recorded_are_not_made_again(trained, tmp_path, monkeypatch, capsys):
    "And one whose weights are gone is passed over with a sentence."
    calls = []
    monkeypatch.setattr(cli_retrieval, 'place_here', lambda: Place(tmp_path, Path('/'), False))
    monkeypatch.setattr(cli_retrieval, 'searchable', lambda *args: [])
    monkeypatch.setattr(cli_retrieval, 'execute', lambda notebook, copy, parameters: calls.append(notebook.stem))
    out = tmp_path / 'reports'
    (out / 'runs' / 'there').mkdir(parents=True)
    (out / 'runs' / 'there' / 'model.safetensors').touch()
    (out / 'retrieval').mkdir()
    (out / 'retrieval' / 'recall-done.json').write_text(json.dumps({}))
    jobs = [
        ('recall', 'recall-done', dict(run='there')),
        ('recall', 'recall-new', dict(run='there')),
        ('throughput', 'pools', dict(run='gone')),
    ]
    monkeypatch.setattr(cli_retrieval, 'measurements', lambda *args: jobs)
    monkeypatch.setattr(retrieval, 'build_pages', lambda folder: calls.append('pages'))
    cli_retrieval.retrieval('quick')
    assert calls == ['recall', 'pages']
    assert 'skipped: pools, for the weights of gone are not here' in capsys.readouterr().out
