"What a newcomer adds, each by one notebook and at most one file of settings: trained, recorded, reported, served, tested; nothing else is touched."

import functools
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbdev.export import nb_export
from walking import walkers

ROOT = Path(__file__).resolve().parents[2]
SIMILARITY = [
    '#| default_exp similarities.bilinear',
    '# Bilinear\n\n> One matrix between query and item.',
    """#| export
import torch
from torch import nn

from molrec.similarities.similarity import Similarity""",
    """#| exporti settings.parts
@part('similarity', 'bilinear', '.similarities.bilinear:Bilinear')
@dataclass(frozen=True)
class BilinearSettings(Settings):
    spread: float = setting(0.1, 0, 10, help='standard deviation that the matrix starts with')""",
    """#| export
class Bilinear(Similarity):
    "q W x."

    def __init__(
        self,
        dim: int,  # D
        spread: float = 0.1,  # standard deviation of W at the start
    ):
        super().__init__()
        self.between = nn.Parameter(torch.randn(dim, dim) * spread)

    def query_side(self, queries, users=None):
        return (queries @ self.between,)

    def scores(self, query_side, item_side):
        (q,), (x,) = query_side, item_side
        return q @ x.T if x.dim() == 2 else torch.einsum('bd,brd->br', q, x)""",
]
ENCODER = [
    '#| default_exp encoders.latest',
    '# The latest item\n\n> What somebody did last is all that is remembered.',
    """#| export
from torch import nn

from molrec.encoders.packed import Encoder""",
    """#| exporti settings.parts
@part('encoder', 'latest', '.encoders.latest:Latest')
@dataclass(frozen=True)
class LatestSettings(Wide):
    shift: bool = setting(True, help='add a learned vector')""",
    """#| export
class Latest(Encoder):
    "The embedding of the item itself."

    def __init__(self, n_items, dim=50, shift=True, max_length=200):
        super().__init__()
        self.dim, self.item_table = dim, nn.Embedding(n_items, dim)
        self.shift = nn.Linear(1, dim, bias=False) if shift else None

    @property
    def items(self):
        return self.item_table.weight

    def forward(self, batch):
        x = self.item_table(batch.items)
        return x if self.shift is None else x + self.shift.weight[:, 0]""",
]
INDEX = [
    '#| default_exp search.component_sum',
    '# Component sum\n\n> One dot product per item, between sums.',
    """#| export
from molrec.search.component_mean import ComponentMean""",
    """#| exporti settings.parts
part('index', 'component-sum', '.search.component_sum:ComponentSum')(Settings)""",
    """#| export
class ComponentSum(ComponentMean):
    "Candidates: the best by the sum of components."

    def item_vectors(self, items):
        return self.precise.item_side(items)[0].sum(1)""",
]
METRIC = """#| export
@metric('reached-after')
def reached_after(ranks):
    "How far down the list the target stands, in the mean."
    return per_user(ranks.ranks, ranks) / ranks.counts"""
DATA_SET = """#| export
@data_set('walkers')
def the_walkers():
    "Forty users who walk around a ring of twenty items."
    source = Source('http://127.0.0.1:PORT/events.csv', lambda file: (pd.read_csv(file), None))
    return Entry((source,), (40, 20, 400), terms='made up', citation='nobody')"""
TASK = [
    '#| default_exp tasks.known',
    '# Known items\n\n> Tell an item that a user knows from one drawn by chance.',
    """#| export
from types import SimpleNamespace

import torch
from torch import nn
import torch.nn.functional as F

from molrec.tasks.runs import RunTask""",
    """#| exporti settings.parts
@part('task', 'known', '.tasks.known:Known')
@dataclass(frozen=True)
class KnownSettings(Settings):
    taste: int = setting(4, 1, 100, help='numbers that describe a user, and an item')""",
    """#| export
class Pairs:
    "Users and items that they know, beside items that are drawn."

    def __init__(self, users, items, n_items, size):
        self.users, self.items, self.n_items, self.size = users, items, n_items, size

    def __len__(self):
        return -(-len(self.users) // self.size)

    def epoch(self, e, start=0):
        draw = torch.Generator().manual_seed(e)
        order = torch.randperm(len(self.users), generator=draw)
        other = torch.randint(self.n_items, (len(order),), generator=draw)
        for rows in order.split(self.size)[start:]:
            yield Batch(self.users[rows], self.items[rows], other[rows])


class Batch(SimpleNamespace):
    def __init__(self, users, targets, others):
        super().__init__(users=users, targets=targets, others=others)

    def to(self, device):
        return Batch(*(t.to(device) for t in (self.users, self.targets, self.others)))


class Tastes(nn.Module):
    def __init__(self, n_users, n_items, width):
        super().__init__()
        self.user, self.item = nn.Embedding(n_users, width), nn.Embedding(n_items, width)

    def forward(self, users, items):
        return (self.user(users) * self.item(items)).sum(1)


class Known(RunTask):
    "Does a user know an item?"

    watch, unit = 'auc', 'pairs'

    def __init__(self, c, data):
        super().__init__(c, data)
        self.epochs = c.epochs
        self.batches = Pairs(data.users, data.items, data.n_items, 32)

    @staticmethod
    def prepare(c, interactions):
        users, items = (torch.from_numpy(interactions[k].factorize(sort=True)[0]) for k in ('user_id', 'item_id'))
        return SimpleNamespace(users=users, items=items, n_items=int(items.max()) + 1, fingerprint='all of it')

    def model(self):
        return Tastes(int(self.data.users.max()) + 1, self.data.n_items, self.settings.taste)

    def loss(self, model, batch):
        apart = model(batch.users, batch.targets) - model(batch.users, batch.others)
        return dict(apart=F.softplus(-apart).mean())

    @torch.no_grad()
    def evaluate(self, model, part):
        pairs = next(Pairs(self.data.users, self.data.items, self.data.n_items, 10**6).epoch(int(part == 'test')))
        won = model(pairs.users, pairs.targets) > model(pairs.users, pairs.others)
        return dict(auc=won.float().mean().item())""",
]


def add_page(package, folder, name, cells):
    "Write a notebook and export it, as `nbdev_export` would."
    nb = nbformat.v4.new_notebook()
    nb.cells = [(nbformat.v4.new_markdown_cell if c.startswith('# ') else nbformat.v4.new_code_cell)(c) for c in cells]
    page = folder / f'{name}.ipynb'
    nbformat.write(nb, page)
    nb_export(page, lib_path=package)


def add_cells(package, folder, page, *cells):
    "Write cells at the end of a copy of a page of ours, and export it."
    nb = nbformat.read(ROOT / 'nbs' / page, as_version=4)
    nb.cells[-1:-1] = [nbformat.v4.new_code_cell(c) for c in cells]
    copy = folder / Path(page).name
    nbformat.write(nb, copy)
    nb_export(copy, lib_path=package)


@pytest.fixture
def copied(tmp_path):
    "A copy of the package to add to, and a command that runs Python with it."
    shutil.copytree(ROOT / 'molrec', tmp_path / 'molrec', ignore=shutil.ignore_patterns('__pycache__'))
    walkers(tmp_path / 'events.csv')

    def python(*words, **more):
        env = os.environ | dict(PYTHONPATH=str(tmp_path)) | more
        done = subprocess.run([sys.executable, *map(str, words)], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return tmp_path / 'molrec', python


SMALL = 'dim: 8\nepochs: 2\nn_negatives: 8\nshare: 64\nmax_length: 8\n'


TRIED = """
import json, sys
from pathlib import Path
from molrec.search.recommender import Recommender
from molrec.base.errors import ConfigError
from molrec.cli.main import main
from molrec.report.plots import method_style
from molrec.report.rows import read_runs, results_table
from molrec.settings.config import Config, load_config, run_id

row, runs = Path(sys.argv[1]), Path(sys.argv[2])
said = {}
try:
    Config(similarity='bilinea')
except ConfigError as e:
    said['nearest'] = str(e)
assert main(['run', str(row), '--runs', str(runs)]) in (0, None)
done = read_runs(runs, 'quick', None)
said['id'], said['config'] = done[0].record['id'], done[0].record['config']
said['named'] = len({run_id(Config(similarity='bilinear', spread=s)) for s in (0.1, 0.2)})
said['table'] = results_table(done).to_dict('records')
said['look'] = method_style('bilinear')
r = Recommender.load(runs / said['id'])
said['lists'] = r.recommend(users=[1, 2], k=3, progress=False).to_dict('records')
print('SAID', json.dumps(said, default=str))
"""


def test_a_similarity_and_an_encoder_are_a_notebook_each_and_a_row(copied, tmp_path):
    "They train, record, report and serve."
    package, python = copied
    add_page(package, tmp_path, '09_bilinear', SIMILARITY)
    add_page(package, tmp_path, '09_latest', ENCODER)
    row = tmp_path / 'latest-bilinear.yaml'
    row.write_text(
        f'row: latest item, bilinear\ndataset: {tmp_path}/events.csv\nencoder: latest\nsimilarity: bilinear\n'
        f'spread: 0.3\nshift: false\n{SMALL}'
    )
    said = json.loads(python('-c', TRIED, row, tmp_path / 'runs').partition('SAID ')[2])
    assert said['nearest'].startswith("similarity: got 'bilinea', nearest 'bilinear'")
    assert '-latest-bilinear-' in said['id'] and said['named'] == 2
    assert (said['config']['spread'], said['config']['shift']) == (0.3, False)
    assert {line['method'] for line in said['table']} == {'bilinear'} and said['look']['marker']
    assert len(said['lists']) == 6 and {line['user_id'] for line in said['lists']} == {1, 2}
    tests = python('-m', 'pytest', '-q', ROOT / 'tests/settings/test_parts.py', '-k', 'bilinear or latest')
    assert ' passed' in tests and 'failed' not in tests


def test_an_index_is_a_notebook(copied, tmp_path):
    "The command line serves from it, and the conformance tests run over it."
    package, python = copied
    add_page(package, tmp_path, '09_component_sum', INDEX)
    row = tmp_path / 'mol.yaml'
    row.write_text(
        f'row: MoL\ndataset: {tmp_path}/events.csv\nsimilarity: mol\nn_query: 2\nn_item: 2\nwidth: 4\n{SMALL}'
    )
    python('-m', 'molrec', 'run', row, '--runs', tmp_path / 'runs')
    out = tmp_path / 'lists.csv'
    python(
        '-m',
        'molrec',
        'recommend',
        next((tmp_path / 'runs').iterdir()),
        '--all',
        '--k',
        3,
        '--index',
        'component-sum',
        '--out',
        out,
    )
    assert len(pd.read_csv(out)) == 40 * 3
    tests = python('-m', 'pytest', '-q', ROOT / 'tests/settings/test_parts.py', '-k', 'component-sum')
    assert ' passed' in tests and 'failed' not in tests
    found = python('-m', 'pytest', '-q', '--collect-only', ROOT / 'tests/search/test_index.py', '-k', 'ComponentSum')
    assert found.count('[ComponentSum') > 5


def test_a_metric_is_a_function(copied, tmp_path):
    "Every run has it, also those recorded before."
    package, python = copied
    add_cells(package, tmp_path, '20_metrics/02_from_ranks.ipynb', METRIC)
    run = next(p for p in sorted((ROOT / 'reports/runs').iterdir()) if (p / 'record.json').exists())
    code = (
        'from molrec.records import read_run; from molrec.metrics.ranks import per_user_metric; import molrec.metrics;'
        f'print(per_user_metric("reached-after", ranks=read_run({str(run)!r}).ranks).mean())'
    )
    ranks = pd.read_parquet(run / 'ranks.parquet').groupby('user_id')['rank'].mean().mean()
    assert float(python('-c', code)) == pytest.approx(ranks)


def test_a_task_is_a_notebook_and_a_row(copied, tmp_path):
    "Trained, recorded, listed and reported by the commands that there are; served it is not."
    package, python = copied
    add_page(package, tmp_path, '09_known', TASK)
    row = tmp_path / 'known.yaml'
    row.write_text(f'row: known items\ndataset: {tmp_path}/events.csv\ntask: known\ntaste: 6\nepochs: 40\nlr: 0.05\n')
    said = python('-m', 'molrec', 'run', row, '--runs', tmp_path / 'runs')
    assert 'known items: auc 0.' in said
    record = json.loads(next((tmp_path / 'runs').glob('*/record.json')).read_text())
    assert '-known-' in record['id'] and record['config']['taste'] == 6 and record['metrics']['test']['auc'] > 0.7
    listed = python('-m', 'molrec', 'runs', '--runs', tmp_path / 'runs')
    assert 'auc' in listed and 'known items' in listed
    assert 'taste' in python('-m', 'molrec', 'run', '--help')
    code = (
        f'from molrec.report import build_report; build_report({str(tmp_path / "runs")!r}, {str(tmp_path / "out")!r})'
    )
    python('-c', code)
    assert (
        'Task: known' in (tmp_path / 'out/results.html').read_text()
        and '| known items |' in (tmp_path / 'out/tables/results.md').read_text()
    )
    code = (
        f'from molrec import Recommender\ntry: Recommender.load({str(tmp_path / "runs" / record["id"])!r})\n'
        'except ValueError as e: print(e)'
    )
    assert 'a run of task known, which makes no lists; wanted one of retrieval' in python('-c', code)


def test_a_data_set_is_a_function(copied, tmp_path):
    "Fetched when it is first needed, counted, run by name."
    package, python = copied
    handler = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path)
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    add_cells(package, tmp_path, '10_data/05_catalogue.ipynb', DATA_SET.replace('PORT', str(server.server_port)))
    row = tmp_path / 'walkers.yaml'
    row.write_text(f'row: walkers\ndataset: walkers\n{SMALL}')
    known = dict(MOLREC_DATA=str(tmp_path / 'none'), XDG_CACHE_HOME=str(tmp_path / 'cache'), HOME=str(tmp_path))
    said = python('-m', 'molrec', 'run', row, '--runs', tmp_path / 'runs', **known)
    server.shutdown()
    assert 'walkers: HR@10' in said
    record = json.loads(next((tmp_path / 'runs').glob('*/record.json')).read_text())
    assert record['id'].startswith('walkers-') and record['split']['n_items'] == 20
