"What a name from data may do on a page, in a file name and in a figure: be read, and nothing else."

import json
import re
import shutil
import unicodedata
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from nbconvert.filters import markdown2html

from molrec.bench import kernels as bench_kernels
from molrec.bench import retrieval_pages as retrieval
from molrec.bench.timing import markdown
from molrec.records.run import seal, sealed
from molrec.report import build, curves, insights, page, plots, published, rows, tables
from molrec.report import protocol_page as protocol
from molrec.report.examples import make_run
from molrec.report.page import inline_svg

BITS = [
    '"',
    "'",
    '<',
    '>',
    '&',
    '&lt;',
    '&#39;',
    '</script>',
    '<script>alert(1)</script>',
    '</style>',
    '</td>',
    '<b>',
    '"onload="alert(1)',
    '" onmouseover="x',
    'id="x"',
    '<svg onload=alert(1)>',
    '<!--',
    '-->',
    '--!>',
    ']]>',
    '{{7*7}}',
    '{% raw %}',
    '{#',
    '%s',
    '\\g<0>',
    '$\\frac',
    '$x$',
    '$',
    '\\(x\\)',
    '\\begin{a}b\\end{a}',
    '\\',
    '\\|',
    '|',
    '\x00',
    '\x1b[31m',
    '\x85',
    '\n',
    '\r\n',
    '\u2028',
    '\u200f',
    '\u202e',
    '\u2066',
    'שלום',
    '🎬',
    'é',
    'a' * 500,
    '../../x',
    '/',
    '..',
    '.',
    '`',
    '```',
    '~~',
    '***',
    '_x_',
    '__',
    '# ',
    '> ',
    '- ',
    '1. ',
    '---',
    '=1+1',
    '@',
    ' ',
    '](javascript:alert(1))',
    '[x](javascript:alert(1))',
    '![x](x.png)',
    '[^1]',
    '[x]: y',
    'http://example.org',
    'www.example.org',
    'SASRec',
]
bits = st.lists(st.sampled_from(BITS) | st.text(max_size=4), min_size=1, max_size=6)
names = bits.map(''.join).filter(lambda name: any(c.isalnum() for c in name))
ODD = 'x" onload="alert(1)', 'SASRec </script><b>{{7*7}} | `a` & [x](javascript:alert(1))', '../../x\n# $\\frac'
DRAWN = {
    'svg',
    'defs',
    'style',
    'g',
    'path',
    'use',
    'clippath',
    'rect',
    'image',
    'text',
    'tspan',
}  # what matplotlib draws with
FILE = re.compile(r'[A-Za-z][A-Za-z0-9-]{0,150}\.(csv|svg|png|md|html)')


# reading what was written


def readable(name):
    "The name as a reader sees it, white space apart; written down a second time."

    def one(c):
        if c in '\t\n\v\f\r\x1c\x1d\x1e\x1f\x85\u2028\u2029':
            return ' '
        turning = '\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069'
        return '\ufffd' if unicodedata.category(c) in ('Cc', 'Cs') or c in turning + '\ufffe\uffff' else c

    return ' '.join(''.join(map(one, name)).split())


class Page(HTMLParser):
    "Elements outside of drawings, elements inside, ids, links, and the text."

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.drawn, self.ids, self.links, self.parts, self.depth = Counter(), Counter(), [], [], [], 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        inside = self.depth > 0
        self.depth += tag == 'svg'
        (self.drawn if inside else self.elements)[tag, tuple(sorted(name for name, _ in attributes))] += 1
        self.ids += [value for name, value in attributes if name == 'id']
        self.links += [value for name, value in attributes if name.endswith('href') or name == 'src']

    def handle_endtag(self, tag):
        self.depth -= tag == 'svg'

    def handle_data(self, data):
        self.parts.append(data)

    def handle_comment(self, data):
        assert self.depth, "a comment that is not a drawing's"

    @property
    def text(self):
        return ' '.join(''.join(self.parts).split())


def check_page(page, plain):
    "No element, attribute, link or id that a page of plain names has not."
    assert page.elements == plain.elements
    assert {tag for tag, _ in page.drawn} <= DRAWN
    assert not [name for of in page.drawn for name in of[1] if name.startswith('on') or name == 'src']
    assert len(page.ids) == len(set(page.ids)) and all(
        re.fullmatch(r'[A-Za-z][A-Za-z0-9_.-]*', i, re.A) for i in page.ids
    )
    assert all(re.fullmatch(r'#[\w.-]+|[\w.~%-]+(/[\w.~%-]+)*', link, re.A) for link in page.links)


def columns(line):
    "As two readers of Markdown count them."
    return len(re.findall(r'(?<!\\)\|', line)), len(re.findall(r'(?:\\.|[^\\|])*\|', line))


def check_markdown(text):
    "Every table has as many places in each of its lines."
    for table in re.findall(r'(?:^\|.*\n)+', text + '\n', re.M):
        assert len({columns(line) for line in table.splitlines()}) == 1
    assert re.search(r'[\x00-\x09\x0b-\x1f\x7f\x85\u2028\u202e]', text) is None


# made-up records under two names


def train(folder, row, dataset, similarity, **more):
    "A made-up run with a learning curve, exposure and a notebook, as the pages draw them."
    history = [{'epoch': e, 'valid_hr@10': 0.2 + 0.01 * e} for e in range(1, 6)]
    way = {'epoch': 4, 'metrics': {m: 0.2 for m in published.report_metrics['leave-last-one-out']}}
    run = make_run(
        folder,
        row,
        similarity=similarity,
        loss='sampled-softmax',
        users=60,
        dataset=dataset,
        protocol='leave-last-one-out',
        history=history,
        published_way=way,
        **more,
    )
    items = pd.DataFrame(dict(item_id=np.arange(3_416), trained=3_416 - np.arange(3_416), shown=1))
    items.to_parquet(run / 'items.parquet', index=False)
    (run / 'run.ipynb').write_text('{}')
    seal(run)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "Two rows on two data sets; the folder has an odd name too."
    folder = tmp_path_factory.mktemp('made') / 'runs "<b>'
    for i, dataset in enumerate(('ml-1m', 'plain')):
        for similarity, row in (('mol', 'Row'), ('dot', 'Another')):
            train(folder, row, dataset, similarity, name=f'{similarity}-{i}', seed=i)
    return folder


def rename(runs, row, dataset):
    "Put names into the records, wherever a record has text that pages show."
    for file in runs.glob('*/record.json'):
        record = json.loads(file.read_text())
        if record['config']['row'] == 'Row':
            record['config']['row'] = row
        if record['config']['dataset'] == 'plain':
            record['config']['dataset'] = dataset
        record['command'], record['code']['commit'] = f'molrec run {dataset}', row
        record['environment']['cpu'] = f'cpu {row}'
        file.write_text(json.dumps(sealed(record, file.parent)))


def svg_alone(fig, stem, data):
    "`save_figure` without the time that a PNG takes; names reach it in the same way."
    files = [Path(f'{stem}{suffix}') for suffix in ('.svg', '.png', '.csv')]
    files[0].parent.mkdir(parents=True, exist_ok=True)
    with plots.mpl.rc_context(plots.theme):
        fig.savefig(files[0])
    files[1].write_bytes(b'')
    data.to_csv(files[2], index=False)
    return files


def build_from(made, folder, row, dataset):
    "Everything that is made from records: files by name, and what was written."
    runs, out = folder / 'a' / 'b' / made.name, folder / 'a' / 'b' / 'out'
    shutil.copytree(made, runs)
    rename(runs, row, dataset)
    before = set(folder.rglob('*'))
    quick = pytest.MonkeyPatch()
    for module in (page, insights, protocol):
        quick.setattr(module, 'save_figure', svg_alone)
    told = protocol.build_protocol(runs, out)
    files, more = insights.build_insights(runs, out)
    files |= build.build_report(runs, out, more=protocol.protocol_html(told) + more)
    files |= {f'protocol {name}': file for name, file in told.items()}
    quick.undo()
    written = {f for f in set(folder.rglob('*')) - before if f.is_file()}
    assert written == set(files.values()) and all(out in f.parents and FILE.fullmatch(f.name) for f in written)
    return files


@pytest.fixture(scope='module')
def plain(made, tmp_path_factory):
    return build_from(made, tmp_path_factory.mktemp('plain'), 'Row', 'plain')


@pytest.mark.filterwarnings('ignore:.*missing from font')
@settings(max_examples=2, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(row=names, dataset=names)
@example(row=ODD[0], dataset=ODD[0])
@example(row=ODD[1], dataset=ODD[2])
@example(row='_\\' + 'w' * 500, dataset='.\x00?')
def test_names_are_text_wherever_they_come(made, plain, tmp_path_factory, row, dataset):
    files = build_from(made, tmp_path_factory.mktemp('odd'), row, dataset)
    page = Page(files['html'].read_text(encoding='utf-8'))
    check_page(page, Page(plain['html'].read_text(encoding='utf-8')))
    assert readable(row) in page.text and readable(f'molrec run {dataset}') in page.text
    assert [f.name for f in files.values() if f.suffix == '.html'] == ['results.html']
    for name in ('markdown', 'summary', 'against dot markdown', 'protocol markdown'):
        text = files[name].read_text(encoding='utf-8')
        check_markdown(text)
        said, wanted = (Page(markdown2html(t)) for t in (text, plain[name].read_text(encoding='utf-8')))
        assert said.elements == wanted.elements and readable(row) in said.text
        assert all(re.fullmatch(r'(\.\./)?[\w.~%-]+(/[\w.~%-]+)*', link, re.A) for link in said.links)
    for file in (f for f in files.values() if f.suffix == '.svg'):
        assert not re.search('[\x00-\x08\x0b\x0c\x0e-\x1f]', file.read_text(encoding='utf-8'))


# each door by itself, with many names

many = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@many
@given(name=names)
def test_a_table_holds_text(name):
    page = Page(tables.set_table(pd.DataFrame({'row': [name, 'b'], 'n': ['1', '2']}), name))
    check_page(page, Page(tables.set_table(pd.DataFrame({'row': ['a', 'b'], 'n': ['1', '2']}), 'a')))
    assert readable(name) in page.text


@many
@given(name=names)
def test_a_drawing_has_a_label_and_nothing_more(name):
    page = Page(inline_svg('<svg id="a"><path id="b"/></svg>', name, name, 'wide'))
    assert page.elements == Counter({('svg', ('aria-label', 'class', 'id', 'role')): 1})
    assert page.drawn == Counter({('path', ('id',)): 1})
    assert all(re.fullmatch(r'[A-Za-z][A-Za-z0-9-]*-[ab]', i) for i in page.ids)


@many
@given(name=names, device=names)
def test_the_page_of_kernels_holds_text(name, device):
    def made(title, text):
        return Page(bench_kernels.kernels_html({title: (pd.DataFrame({'work': [text]}), text)}, text))

    page = made(name, device)
    check_page(page, made('a', 'b'))
    assert readable(name) in page.text and readable(device) in page.text


@settings(many, max_examples=300)
@given(name=names)
def test_markdown_shows_a_name_as_it_is(name):
    def made(name):
        return tables.markdown_table(pd.DataFrame({'row': [name, 'b'], 'n': ['1', '2']}))

    check_markdown(made(name))
    said = Page(markdown2html(made(name)))
    assert said.elements == Page(markdown2html(made('a'))).elements
    assert readable(name) in said.text
    check_markdown(markdown(pd.DataFrame({'row': [name, 'b'], 'n': ['1', '2']})))


def recalls(corpus):
    "Rows as the measurement of recall makes them."
    of = dict(
        corpus=corpus,
        n_items=9,
        method='h-indexer',
        label='h-indexer, int8',
        k=2,
        low=0.4,
        high=0.99,
        n_queries=4,
        seed=0,
    )
    return [of | dict(k_prime=k, scored=k, recall=0.5 + k / 20) for k in (2, 4, 8)]


@pytest.mark.filterwarnings('ignore:.*missing from font')
@settings(max_examples=8, deadline=None, derandomize=True, database=None)
@given(name=names)
@example(name='$\\frac, $b')
@example(name='_hidden')
def test_figures_set_names_as_they_are_written(name):
    rows = pd.DataFrame(dict(row=[name], method='mol', published=0.3, ours=0.31, low=0.3, high=0.32))
    plots.hr_figure(rows).draw_without_rendering()
    of = dict(row=name, encoder='sasrec', similarity='mol', seed=0, warm=0, every=1)
    lines = [of | dict(epoch=e, valid=0.1 * e, kept=e == 4) for e in range(1, 5)]
    drawn = curves.curves_figure(pd.DataFrame(lines))
    drawn.draw_without_rendering()
    assert len(drawn.legends[0].get_texts()) == 1
    retrieval.recall_figure(pd.DataFrame(recalls(name))).draw_without_rendering()


@pytest.mark.parametrize('name', ODD)
def test_the_page_of_recall_holds_text(tmp_path, name):
    def page(folder, name):
        heads = [dict(corpus=name, head=name, k_prime=2, recall=0.5, first_minus_this=0.0, low=0.0, high=0.0)]
        for kind, rows in dict(recall=recalls(name), heads=heads).items():
            retrieval.write_record(folder, f'{kind}-x', rows, {})
        return retrieval.build_pages(folder)[0].read_text(encoding='utf-8')

    text = page(tmp_path / 'odd', name)
    check_markdown(text)
    said = Page(markdown2html(text))
    assert said.elements == Page(markdown2html(page(tmp_path / 'plain', 'name'))).elements
    assert said.text.count(readable(name)) >= 3
    assert {link for link in said.links if link[0] != '#'} == {'recall.png', 'recall.csv'}


def test_data_sets_of_one_name_get_files_of_their_own(tmp_path):
    "Names that differ where a file name cannot, a name that another's number would give, and upper case."
    for i, dataset in enumerate(('first', 'a/mine', 'b/mine', 'mine-2', 'MINE', 'mi*ne', '?')):
        make_run(tmp_path, 'Row', users=30, dataset=dataset, protocol='leave-last-one-out', name=f'r{i}')
    made = [b.name for b in build.make_blocks(rows.read_runs(tmp_path))]
    stems = insights.file_names(rows.blocks(rows.read_runs(tmp_path)))
    for found in (made, stems):
        assert len({name.lower() for name in found}) == 7
        assert all(re.fullmatch('[A-Za-z][A-Za-z0-9-]*', name) for name in found)


def test_the_committed_data_sets_keep_their_file_names():
    config = dict(protocol='leave-last-one-out', tie_order='shuffled')
    for dataset in ('ml-1m', 'ml-100k', 'ml-20m', 'amazon-beauty', 'amazon-games', 'amazon-books'):
        assert build.block_name(config | dict(dataset=dataset), 'other') == f'{dataset}-leave-last-one-out-shuffled'
        assert insights.file_name(config | dict(dataset=dataset)) == dataset


def test_html_that_is_no_template_s_is_text(tmp_path):
    make_run(tmp_path, 'Row', users=30)
    page = build.build_report(tmp_path, tmp_path / 'out', more='<script>alert(1)</script>')['html'].read_text()
    assert '&lt;script&gt;alert(1)' in page and page.count('<script') == 1
