"The report: what it refuses, what it joins, and that it depends on the records alone."

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from old_records import unsealed

from molrec.base.errors import DataError
from molrec.records.listing import run_command
from molrec.records.run import read_run
from molrec.report import blocks, build, comparisons, frame, last_out, page, published, rows
from molrec.report.examples import make_rows, make_run

# The table of the replication report, written down a second time: a slip of the hand in one of the two shows.
reference = """
SASRec, MLP + BCE | .0644 | .3467 | .7044 | .9378 | .1588
SASRec, MoL + BCE | .0644 | .3489 | .6533 | .9378 | .1521
SVD, MLP + BCE | .0600 | .3244 | .6844 | .9356 | .1497
SASRec, MoL + sampled softmax | .0600 | .3200 | .6178 | .9267 | .1454
SASRec, dot product | .0466 | .3355 | .6355 | .9311 | .1355
SASRec, FM + BCE | .0578 | .3044 | .5667 | .9222 | .1334
SASRec, NeuralFM + BCE | .0378 | .2956 | .6156 | .9200 | .1257
SVD, FM + BCE | .0511 | .2200 | .4844 | .8644 | .1142
SVD, NeuralFM + BCE | .0378 | .2667 | .6356 | .9133 | .1113
SVD, dot product | .0044 | .1933 | .5400 | .9088 | .0633
"""


@pytest.fixture(scope='module')
def records(tmp_path_factory):
    return make_rows(tmp_path_factory.mktemp('runs'))


@pytest.fixture(scope='module')
def built(records, tmp_path_factory):
    return build.build_report(records, tmp_path_factory.mktemp('reports'))


def edit(folder, change):
    record = unsealed(folder)
    change(record)
    (folder / 'record.json').write_text(json.dumps(record))


def edit_ranks(folder, change):
    edit(folder, lambda record: None)
    pairs = pd.read_parquet(folder / 'ranks.parquet')
    change(pairs).to_parquet(folder / 'ranks.parquet', index=False)


# what is published


def test_published_numbers_equal_the_reference():
    lines = [line.split('|') for line in reference.strip().splitlines()]
    assert published.published.row.tolist() == [cells[0].strip() for cells in lines]
    numbers = np.array([[float(x) for x in cells[1:]] for cells in lines])
    assert (published.published[['hr@1', 'hr@10', 'hr@50', 'hr@500', 'mrr']].to_numpy() == numbers).all()


published_last_out = """
sasrec      | dot | .2853 | .1603 | .5474 | .2185 | .7528 | .2498
bert4rec    | dot | .2843 | .1537
gru4rec     | dot | .2811 | .1648
hstu        | dot | .3097 | .1720 | .5754 | .2307 | .7716 | .2606
hstu-large  | dot | .3294 | .1893 | .5935 | .2481 | .7839 | .2771
hstu-large  | mol | .3412 | .1979 | .6013 | .2556 | .7877 | .2840
"""


def test_published_last_out_equals_the_reference():
    lines = [[c.strip() for c in line.split('|')] for line in published_last_out.strip().splitlines()]
    metrics = published.report_metrics['leave-last-one-out']
    assert published.published_last_out['ml-1m'] == {
        (encoder, similarity): dict(zip(metrics, map(float, numbers))) for encoder, similarity, *numbers in lines
    }
    assert published.published_name(dict(encoder='hstu', n_blocks=8, similarity='mol')) == ('hstu-large', 'mol')
    assert published.published_name(dict(encoder='sasrec', n_blocks=8, similarity='dot')) == ('sasrec', 'dot')


def test_five_best_published_rows_cannot_be_told_apart():
    rates = published.published.set_index('row')['hr@10']
    assert set(rates.nlargest(5).index) <= set(comparisons.not_told_apart(rates, 450))
    assert len(comparisons.not_told_apart(rates, 10**6)) == 1
    assert '7 of the 10 published rows' in comparisons.published_remark()


@pytest.mark.parametrize(
    'config,row',
    [
        (dict(encoder='sasrec', similarity='mol', loss='bce'), 'SASRec, MoL + BCE'),
        (dict(encoder='sasrec', similarity='mol', loss='sampled-softmax'), 'SASRec, MoL + sampled softmax'),
        (dict(encoder='sasrec', similarity='dot', loss='full-softmax'), 'SASRec, dot product'),
        (dict(encoder='svd', similarity='dot', loss='none'), 'SVD, dot product'),
        (dict(encoder='sasrec', similarity='fm', loss='full-softmax'), None),
        (dict(encoder='popularity', similarity='dot', loss='none'), None),
    ],
)
def test_runs_are_matched_by_what_they_are(config, row):
    twin = published.published_row(config)
    assert (None if twin is None else twin['row']) == row


# what is refused


def changed_rank(pairs):
    return pairs.assign(rank=np.where(pairs.index == pairs['rank'].argmin(), pairs['rank'] + 1, pairs['rank']))


@pytest.mark.parametrize(
    'change,message',
    [
        (changed_rank, 'is recorded as'),
        (lambda p: p.assign(rank=1), 'each target is a distinct item'),
        (lambda p: p.assign(rank=p['rank'] - 1), 'rank: values start at 1, got 0'),
        (lambda p: p.assign(rank=p['rank'] + 0.5), 'rank: values must be integers'),
        (lambda p: p[p.user_id > 0], 'n_test_users is 60, ranks.parquet has 59'),
        (lambda p: p.drop(index=0), 'n_test_targets'),
        (lambda p: p.sort_values('rank', kind='stable'), 'are not together'),
        (lambda p: p.drop(columns='item_id'), 'no column item_id'),
        (lambda p: p.head(0), 'no targets'),
    ],
)
def test_tampered_ranks_are_refused(tmp_path, change, message):
    run = make_run(tmp_path, 'SASRec, MoL + BCE', users=60)
    edit_ranks(run, change)
    with pytest.raises(DataError, match=message) as e:
        rows.read_runs(tmp_path)
    assert run.name in str(e.value)


@pytest.mark.parametrize(
    'change,message',
    [
        (lambda r: r.pop('seed'), 'missing seed'),
        (lambda r: r['config'].pop('encoder'), 'missing config.encoder'),
        (lambda r: r['split'].pop('fingerprint'), 'missing split.fingerprint'),
        (lambda r: r['metrics'].pop('test'), 'missing metrics.test'),
        (lambda r: r.update(config='sasrec'), "config: got 'sasrec', wanted an object"),
        (lambda r: r.update(schema=2), 'schema 2'),
        (lambda r: r.update(id='another'), "run 'another' lies in folder"),
        (lambda r: r['metrics']['test'].update(auc=0.5), "unknown metric 'auc'"),
        (lambda r: r['metrics']['test'].update({'hr@0': 0.5}), 'k must be at least 1'),
        (lambda r: r['metrics'].update(test={}), 'missing metrics.test.hr@10'),
        (
            lambda r: r['metrics']['test'].update({'hr@10': None}),
            'metrics.test.hr@10: got None, wanted a number from 0 to 1',
        ),
        (lambda r: r['metrics']['test'].update({'hr@10': 0.9}), 'hr@10 is recorded as 0.9'),
        (lambda r: r['metrics']['test'].update({'mrr': float('nan')}), 'NaN is not JSON'),
    ],
)
def test_bad_records_are_refused(tmp_path, change, message):
    run = make_run(tmp_path, 'SASRec, MoL + BCE', users=60)
    edit(run, change)
    with pytest.raises(DataError, match=re.escape(message)) as e:
        rows.read_runs(tmp_path)
    assert 'record.json' in str(e.value)


def test_broken_files_are_refused_and_unfinished_runs_passed_over(tmp_path):
    run = make_run(tmp_path, 'SASRec, MoL + BCE', users=60)
    (tmp_path / 'unfinished').mkdir()
    assert len(rows.read_runs(tmp_path)) == 1
    whole = (run / 'ranks.parquet').read_bytes()
    (run / 'ranks.parquet').write_bytes(whole[:200])
    with pytest.raises(DataError, match='ranks.parquet: not the file that was sealed'):
        rows.read_runs(tmp_path)
    edit(run, lambda record: None)
    (run / 'ranks.parquet').write_bytes(whole[:200])
    with pytest.raises(DataError, match='ranks.parquet: cannot be read'):
        rows.read_runs(tmp_path)
    (run / 'ranks.parquet').unlink()
    with pytest.raises(DataError, match='ranks.parquet: cannot be read'):
        rows.read_runs(tmp_path)
    (run / 'record.json').write_text('{"id": ')
    with pytest.raises(DataError, match='record.json: cannot be read'):
        rows.read_runs(tmp_path)


def test_nothing_to_report(tmp_path):
    with pytest.raises(DataError, match="no records of scale 'quick'.*make report SCALE=quick"):
        build.build_report(tmp_path, tmp_path / 'out')


def test_different_users_are_not_paired(tmp_path):
    a, b = (read_run(make_run(tmp_path, f'row {n}', users=n, name=f'r{n}')) for n in (60, 70))
    with pytest.raises(DataError, match='tested on different users'):
        comparisons.paired_tests([a, b], ('mrr',))


# which runs, which rows


def test_latest_record_of_a_row_stands_and_seeds_are_named(tmp_path):
    make_run(tmp_path, 'SASRec, MoL + BCE', users=60, name='old', started='2026-11-20T00:00:00+00:00')
    make_run(tmp_path, 'SASRec, MoL + BCE', users=60, name='new')
    assert [r.record['id'] for r in rows.read_runs(tmp_path)] == ['new']
    make_run(tmp_path, 'SASRec, MoL + BCE', users=60, seed=1, name='seed-1')
    (run,) = rows.read_runs(tmp_path)
    assert run.label == 'SASRec, MoL + BCE (2 seeds)' and [r.record['seed'] for r in run.each] == [0, 1]
    table = rows.results_table([run])
    assert (table[table.row.str.contains('seeds')].published.notna()).all()
    means = [r.record['metrics']['test']['hr@10'] for r in run.each]
    line = table[(table.row == run.label) & (table.metric == 'hr@10')].iloc[0]
    assert abs(line.ours - sum(means) / 2) < 1e-12
    assert line.high - line.low >= 12.7 * abs(means[0] - means[1])  # Student's t of one degree of freedom


def test_names_lead_to_notebooks_that_are_there(tmp_path):
    for name, row in (('a', 'SASRec, MoL + BCE'), ('b', 'SVD, dot product')):
        make_run(tmp_path / 'runs', row, users=60, name=name)
    (tmp_path / 'runs' / 'a' / 'run.ipynb').write_text('{}')
    files = build.build_report(tmp_path / 'runs', tmp_path)
    page, text = files['html'].read_text(), files['markdown'].read_text()
    assert page.count('href="runs/a/run.ipynb"') == 5 and 'runs/b' not in page + text
    assert (
        '[SASRec, MoL + BCE](../runs/a/run.ipynb)' in text
        and (files['markdown'].parent / '../runs/a/run.ipynb').exists()
    )


def test_other_draws_of_the_ties_are_no_rows(tmp_path):
    make_run(tmp_path / 'runs', 'SASRec, MoL + BCE', users=60, name='a')
    record = unsealed(tmp_path / 'runs' / 'a')
    again = shutil.copytree(tmp_path / 'runs' / 'a', tmp_path / 'runs' / 'b')
    (again / 'record.json').write_text(
        json.dumps(record | dict(id='b', seed=5, config=record['config'] | dict(tie_seed=5, seed=5)))
    )
    assert ' seeds)' not in build.build_report(tmp_path / 'runs', tmp_path)['markdown'].read_text()


def test_published_row_that_was_not_run_stays(tmp_path):
    make_run(tmp_path, 'SASRec, MoL + BCE', users=60)
    table = rows.results_table(rows.read_runs(tmp_path))
    assert table[table.metric == 'hr@10'].verdict.value_counts()['not run'] == 9
    assert len(table) == 50


def test_other_data_is_not_comparable(tmp_path):
    make_run(tmp_path, 'SASRec, MoL + BCE', users=80, dataset='ml-100k', scale='smoke')
    make_run(tmp_path, 'Popularity', 'popularity', 'dot', 'none', users=80, dataset='ml-100k', scale='smoke')
    make_run(
        tmp_path,
        'SASRec, dot product',
        similarity='dot',
        users=80,
        dataset='ml-100k',
        scale='smoke',
        protocol='leave-last-one-out',
    )
    files = build.build_report(tmp_path, tmp_path / 'out', scale='smoke')
    assert files['html'].name == 'results-smoke.html'
    for name in ('report-2024 table', 'leave-last-one-out-shuffled table'):
        table = pd.read_csv(files[name])
        assert table.published.isna().all() and table.difference.isna().all()
        assert set(table.verdict) <= {'not comparable', 'no published value'}
    assert '0.349' not in files['markdown'].read_text()


def test_another_data_set_comes_after_and_leaves_the_tables_before_it_as_they_were(records, built, tmp_path):
    shutil.copytree(records, tmp_path / 'runs')
    for row, kind in (('SASRec, MoL + head', {}), ('Popularity', dict(encoder='popularity', similarity='dot'))):
        make_run(
            tmp_path / 'runs',
            row,
            **dict(loss='sampled-softmax', users=90, dataset='amazon-beauty', protocol='leave-last-one-out') | kind,
        )
    more = build.build_report(tmp_path / 'runs', tmp_path / 'out')
    kept = [k for k in built if k not in ('html', 'markdown')]
    assert [k for k in kept if more[k].read_bytes() != built[k].read_bytes()] == []
    assert {k for k in more if k not in built} == {
        f'amazon-beauty-leave-last-one-out-shuffled {kind}' for kind in ('table', 'paired', 'svg', 'png', 'csv')
    }
    page, text = more['html'].read_text(), more['markdown'].read_text()
    titles = re.findall('<h2 id="[^"]+">(.*?)</h2>', page)
    assert len(titles) == 3 and titles[-1] == 'Amazon Beauty, leave-last-one-out, ties shuffled'
    assert text.startswith(built['markdown'].read_text().strip())
    assert '| embedder, similarity + loss | ours [95 % interval] |' in text  # no columns for what nobody published


def test_verdicts():
    nan = float('nan')
    assert rows.verdict(0.30, 0.33, 0.31, 0.35) == 'above'
    assert rows.verdict(0.30, 0.31, 0.29, 0.33) == rows.verdict(0.30, 0.30, 0.28, 0.32) == 'reached'
    assert rows.verdict(0.30, 0.29, 0.27, 0.31) == rows.verdict(0.30, 0.28, 0.26, 0.30) == 'within noise'
    assert rows.verdict(0.30, 0.27, 0.25, 0.29) == 'not reproduced'
    assert rows.verdict(nan, 0.3, 0.2, 0.4) == 'no published value'
    assert rows.verdict(0.3, nan, nan, nan) == 'not run'
    assert all(f'"{word}"' in rows.verdict_rule for word in ('above', 'reached', 'within noise', 'not reproduced'))


def test_the_rule_is_printed_with_every_table_it_judges(built):
    text = built['markdown'].read_text()
    assert text.count(rows.verdict_rule) == 2 and rows.verdict_rule in built['summary'].read_text()


def test_bold_only_where_the_paired_test_says_so(tmp_path):
    close = [read_run(make_run(tmp_path / 'close', f'row {i}', skill=0.01 * i, name=f'r{i}')) for i in range(2)]
    apart = [read_run(make_run(tmp_path / 'apart', f'row {i}', skill=2.0 * i, name=f'r{i}')) for i in range(2)]
    for runs, best in ((close, None), (apart, 'row 1')):
        b = blocks.make_block(runs, 'report-2024')
        assert comparisons.clear_best(b.hr10, b.tests) == best
        assert ('**row 1**' in page.block_markdown(b).split('<details>')[0]) == (best is not None)


def test_published_way_is_the_public_rule(records):
    runs = rows.blocks(rows.read_runs(records))[0]
    beside = last_out.last_out_table(runs)
    dot = beside[(beside.row == 'SASRec, dot product') & (beside.metric == 'hr@10')].iloc[0]
    public = next(r for r in runs if r.label == dot.row).record['public_rule']
    assert (
        dot.published_way == pytest.approx(public['metrics']['hr@10'])
        and dot.published_way < dot.ours
        and dot.epoch == '4'
    )
    assert dot.difference == pytest.approx(dot.published_way - 0.2853) and dot.verdict == 'not reproduced'
    assert dot.low < dot.ours < dot.high


def test_a_record_without_ranks_by_the_public_rule_is_not_judged(tmp_path):
    way = dict(epoch=4, metrics={'hr@10': 0.4})
    make_run(
        tmp_path, 'SASRec, dot product', similarity='dot', users=80, protocol='leave-last-one-out', published_way=way
    )
    table = last_out.last_out_table(rows.read_runs(tmp_path))
    assert set(table.verdict) == {'not re-ranked'} and table.published_way.isna().all()
    said = blocks.headline(blocks.make_block(rows.read_runs(tmp_path), 'x'))
    assert '1 is not re-ranked' in said and 'is reached' not in said


def test_seeds_without_it_are_said_and_left_out(tmp_path):
    kinds = dict(similarity='dot', users=80, protocol='leave-last-one-out')
    for seed in range(3):
        make_run(tmp_path, 'SASRec, dot product', seed=seed, name=f's{seed}', public=(7, 1) if seed else None, **kinds)
    block = blocks.make_block(rows.read_runs(tmp_path), 'x')
    line = block.hr10.iloc[0]
    ways = [r.record['public_rule']['metrics']['hr@10'] for r in block.runs[0].each if r.public is not None]
    assert (
        line.published_way == pytest.approx(np.mean(ways)) and line.reranked == '2 of 3 seeds' and line.epoch == '7, 7'
    )
    assert '(2 of 3 seeds)' in page.block_markdown(block) and 'ours are 1 (SASRec, dot product (3 seeds))' in ' '.join(
        block.remarks
    )


# when a model is asked


@pytest.mark.parametrize(
    'config,asked',
    [
        (dict(), 'target'),
        (dict(ask='usual'), 'usual'),
        (dict(next_time=False), 'last'),
        (dict(use_time=False), ''),
        (dict(encoder='sasrec'), ''),
    ],
)
def test_rows_say_when_they_were_asked(config, asked):
    assert last_out.asked_of(dict(encoder='hstu') | config) == asked


def test_rows_that_read_times_are_marked_from_the_record(tmp_path):
    kinds = dict(encoder='hstu', similarity='dot', users=80, protocol='leave-last-one-out')
    make_run(tmp_path / 'runs', 'HSTU, dot product', name='a', public=(3, 101), **kinds)
    make_run(tmp_path / 'runs', 'HSTU, usual gap', name='b', **kinds)
    edit(tmp_path / 'runs' / 'b', lambda r: r['config'].update(ask='usual'))
    make_run(tmp_path / 'runs', 'SASRec, dot product', name='c', **kinds | dict(encoder='sasrec'))
    files = build.build_report(tmp_path / 'runs', tmp_path)
    table = pd.read_csv(
        files['leave-last-one-out-shuffled table']
        if 'leave-last-one-out-shuffled table' in files
        else next(f for k, f in files.items() if k.endswith('table')),
        keep_default_na=False,
    )
    assert table[table.metric == 'hr@10'].set_index('row').asked.to_dict() == {
        'HSTU, dot product': 'target',
        'HSTU, usual gap': 'usual',
        'SASRec, dot product': '',
    }
    for text in (files['markdown'].read_text(), files['html'].read_text()):
        assert 'HSTU, dot product ᵗ' in text and 'HSTU, usual gap ᵘ' in text and 'SASRec, dot product ᵗ' not in text
        assert (
            all(note in text for note in (last_out.asked_notes['target'], last_out.asked_notes['usual']))
            and last_out.asked_notes['last'] not in text
        )


def test_a_row_that_does_not_know_the_time_is_held_against_nothing():
    config = dict(dataset='ml-1m', tie_order='shuffled', epochs=101, encoder='hstu', similarity='dot', n_blocks=2)
    assert (
        published.published_metrics(config)['hr@10'] == 0.3097
        and published.published_metrics(config | dict(ask='usual')) == {}
    )


def test_without_published_way_nothing_is_compared(tmp_path):
    make_run(tmp_path, 'SASRec, dot product', similarity='dot', users=80, protocol='leave-last-one-out')
    assert set(last_out.last_out_table(rows.read_runs(tmp_path)).verdict) == {'not comparable'}
    assert build.build_report(tmp_path, tmp_path / 'out')['html'].exists()


@pytest.mark.parametrize(
    'change', [dict(tie_order='stable'), dict(epochs=8), dict(dataset='ml-100k'), dict(encoder='svd')]
)
def test_only_like_is_held_against_like(change):
    config = dict(dataset='ml-1m', tie_order='shuffled', epochs=101, encoder='sasrec', similarity='dot', n_blocks=2)
    assert published.published_metrics(config)['hr@10'] == 0.2853
    assert published.published_metrics(config | change) == {}


# what is written


def test_two_builds_give_the_same_bytes(records, built, tmp_path):
    again = build.build_report(records, tmp_path)
    assert {k: f.name for k, f in built.items()} == {k: f.name for k, f in again.items()}
    assert [k for k, f in built.items() if f.read_bytes() != again[k].read_bytes()] == []


def test_nothing_half_written_stays(built):
    root = built['html'].parent
    assert sorted(f.relative_to(root).as_posix() for f in root.rglob('*') if f.is_file()) == sorted(
        f.relative_to(root).as_posix() for f in built.values()
    )


def test_the_page_refers_to_nothing_outside(built):
    page = built['html'].read_text()
    assert not re.search(r'https?:|//[a-z]|\bsrc=|@import|<link|<iframe|<img', page)
    assert page.count('<script') == page.count(f'<script>{frame.script}</script>') == 1
    assert set(re.findall(r'url\((.)', page)) <= {'#'} and all(
        h.startswith('#') for h in re.findall(r'href="([^"]*)"', page)
    )
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_the_page_says_how_each_row_was_made(records, built):
    page = built['html'].read_text()
    for run in rows.read_runs(records):
        assert run_command(run.record) in page and run.record['split']['fingerprint'] in page
    for word in ('a processor, 2 cores', '127 s', '1,532 MiB', 'torch=2.13.0', 'batch_size=64'):
        assert word in page


def test_names_are_escaped(tmp_path):
    make_run(tmp_path, 'MoL <script>alert(1)</script> | & "x"', users=60)
    files = build.build_report(tmp_path, tmp_path / 'out')
    page = files['html'].read_text()
    assert page.count('<script') == 1 and 'alert(1)&lt;/script&gt;' in page and '<script>alert' not in page
    assert '\\|' in files['markdown'].read_text()


def test_tables_carry_every_row(built):
    table = pd.read_csv(built['report-2024 table'])
    assert set(table.row) == set(published.published.row) | {'Popularity'} and len(table) == 55
    assert table.columns.tolist() == [
        'row',
        'method',
        'metric',
        'published',
        'ours',
        'low',
        'high',
        'difference',
        'verdict',
    ]
    markdown = built['markdown'].read_text()
    assert all(f'| {row} |' in markdown or f'| **{row}** |' in markdown for row in set(table.row))
    paired = pd.read_csv(built['report-2024 paired'])
    assert len(paired) == 55 * 5 and (paired.p_holm >= paired.p).all()
