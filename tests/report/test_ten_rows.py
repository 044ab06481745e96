"The replication report's ten rows: its digits, its rule, and the two readings of one record."

import json

import numpy as np
import pandas as pd
import pytest

from molrec.base.errors import DataError
from molrec.data.sets import load, own_folder
from molrec.data.splits import split
from molrec.metrics.from_ranks import mrr
from molrec.records.run import seal
from molrec.report import published, rows, ten_rows
from molrec.report.examples import make_run


def with_second_reading(folder, shift):
    "A run whose ranks are better by `shift` places once histories are removed."
    file = folder / 'ranks.parquet'
    pairs = pd.read_parquet(file)
    least = (
        pairs.groupby('user_id')['rank'].rank(method='first').astype(int)
    )  # a user's i-th best target has rank i or more
    pairs.assign(rank_unseen=np.maximum(pairs['rank'] - shift, least)).to_parquet(file, index=False)
    record = json.loads((folder / 'record.json').read_text())
    for key in ('seal', 'files', 'ranks_sha256'):
        record.pop(key, None)
    (folder / 'record.json').write_text(json.dumps(record))
    seal(folder)


def rows_of(folder):
    return ten_rows.of_report(rows.read_runs(folder))


def test_forty_hit_rates_are_fractions_of_450_alone():
    rates = published.published[ten_rows.hit_rates].to_numpy()
    assert [n for n in range(2, 900) if ten_rows.are_fractions(rates, n).all()] == [450]


def test_svd_reads_as_printed_where_histories_stay_in():
    if not own_folder('ml-1m', None):
        pytest.skip('no copy of ml-1m in MOLREC_DATA or ../shared/data')
    ml = load('ml-1m')
    s = split(ml, 'report-2024')
    left_in = {dim: ten_rows.ranked(ten_rows.svd_scores(s, dim, ml), s.test) for dim in (42, 50)}
    assert [ten_rows.hit_counts(r) for r in left_in.values()] == [[2, 86, 245, 409], [1, 71, 236, 413]]
    assert [round(mrr(r).mean(), 4) for r in left_in.values()] == [0.0622, 0.0533]


def test_one_record_is_read_both_ways(tmp_path):
    for i, (row, similarity) in enumerate((('SASRec, MoL + BCE', 'mol'), ('SASRec, MLP + BCE', 'mlp'))):
        with_second_reading(
            make_run(tmp_path, row, similarity=similarity, users=60, name=f'r{i}', skill=0.3 * i), 5 * (i + 1)
        )
    runs = rows_of(tmp_path)
    table = ten_rows.leak_table(runs)
    assert (table.removed > table.left_in).all() and sorted(table.place) == [1, 2] and table.printed.notna().all()
    assert 'Kendall' in ten_rows.ten_rows_markdown(runs)
    assert all((ten_rows.unseen(r).ranks.ranks <= r.ranks.ranks).all() for r in runs)


def test_a_record_of_one_reading_is_named(tmp_path):
    make_run(tmp_path, 'SASRec, MoL + BCE', users=30)
    with pytest.raises(DataError, match="'SASRec, MoL \\+ BCE': its record keeps one reading"):
        ten_rows.leak_table(rows_of(tmp_path))
    assert 'Kendall' not in ten_rows.ten_rows_markdown(rows_of(tmp_path))


def test_figures_of_another_rule_are_shown_and_not_judged(tmp_path):
    make_run(tmp_path, 'SASRec, MoL + BCE', users=60, protocol='global-time')
    table = rows.results_table(rows.read_runs(tmp_path))
    assert (
        set(table.verdict) == {published.another_rule}
        and table.published.notna().all()
        and table.difference.isna().all()
    )
    assert not rows_of(tmp_path)
