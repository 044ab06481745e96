"Beauty, Sports, Toys: who stands for us is chosen by validation, a printed figure keeps its source, and what is not run is said."

import json
from pathlib import Path

import pytest
from old_records import unsealed

from molrec.records.listing import read_folder
from molrec.records.run import seal
from molrec.report import blocks, generative, others, page, rows
from molrec.report.anchors import anchors, sources
from molrec.report.examples import make_run
from molrec.settings.config import load_config

CONFIGS = Path(__file__).resolve().parents[2] / 'nbs' / 'configs'

# Printed on the three sets, written down a second time: recall and NDCG at 10.
reference = """
amazon-beauty | TIGER | TIGER | .0648 | .0384
amazon-beauty | TIGER | Cornac | .0634 | .0338
amazon-beauty | TIGER | GenRec | .0721 | .0378
amazon-beauty | LC-Rec | GenRec | .0791 | .0438
amazon-beauty | ActionPiece | ActionPiece | .0775 | .0424
amazon-beauty | RPG | RPG | .0809 | .0464
amazon-beauty | SASRec, sampled softmax, tuned | eSASRec | .0921 | .0531
amazon-sports | TIGER | TIGER | .0400 | .0225
amazon-sports | SASRec, sampled softmax, tuned | eSASRec | .0569 | .0314
amazon-toys | TIGER | TIGER | .0712 | .0432
amazon-toys | SASRec, sampled softmax, tuned | eSASRec | .0970 | .0580
ml-1m | HSTU-large, full softmax | NetEase | .3419 | .1944
ml-1m | eSASRec | eSASRec, MovieLens | .3133 | .1772
ml-1m | FuXi-alpha | eSASRec, MovieLens | .3164 | .1813
ml-1m | HSTU-large | RecTools | .3642 | .2164
ml-1m | HSTU-large, MoL | rails, later | .3474 | .2000
"""


def put(folder, row, valid, skill, seed=0, dataset='amazon-toys', **settings):
    "A made-up run of one of the sets, with what validation said."
    kinds = {k: settings.pop(k, v) for k, v in dict(encoder='sasrec', similarity='dot').items()}
    name = f'{row}-{seed}'.replace(' ', '-').replace(',', '')
    where = make_run(
        folder,
        row,
        loss='sampled-softmax',
        skill=skill,
        users=400,
        seed=seed,
        dataset=dataset,
        protocol='leave-last-one-out',
        name=name,
        **kinds,
    )
    found = unsealed(where)
    found['config'] |= dict(tie_order='stable', epochs=30) | settings
    found['metrics']['valid'] = {'hr@10': valid}
    (where / 'record.json').write_text(json.dumps(found))
    seal(where)


def rows_of(folder):
    return generative.tried(generative.of_set(read_folder(folder)[0], 'amazon-toys'))


def test_printed_figures_equal_the_reference():
    by_key = anchors.set_index(['dataset', 'model', 'source'])
    for line in reference.strip().splitlines():
        dataset, model, source, recall, ndcg = map(str.strip, line.split('|'))
        assert by_key.loc[(dataset, model, source), ['hr@10', 'ndcg@10']].tolist() == [float(recall), float(ndcg)]
    assert set(anchors.source) <= set(sources)


def test_validation_chooses_and_the_test_does_not(tmp_path):
    put(tmp_path, 'SASRec, favoured', valid=0.13, skill=0.0)
    put(tmp_path, 'SASRec, lucky', valid=0.11, skill=1.0, dropout=0.3)
    top = others.chosen(rows_of(tmp_path))
    assert top.label == 'SASRec, favoured'
    assert rows.interval(top, 'hr@10')[0] < min(
        rows.interval(r, 'hr@10')[0] for r in rows_of(tmp_path) if r.label != top.label
    )
    assert set(generative.printed_lines(rows_of(tmp_path), 'amazon-toys').ours.round(6)) == {
        round(rows.interval(top, m)[0], 6) for m in ('hr@10', 'ndcg@10')
    }


def test_seeds_of_a_setting_are_one_row_and_their_mean_counts(tmp_path):
    for seed, valid in enumerate((0.16, 0.10, 0.10)):
        put(tmp_path, 'SASRec, three', valid, skill=0.2, seed=seed)
    put(tmp_path, 'SASRec, one', valid=0.13, skill=0.2, dropout=0.3)
    rows = rows_of(tmp_path)
    assert sorted(len(r.each) for r in rows) == [1, 3]
    assert others.chosen(rows).label == 'SASRec, one'  # .13 above the mean of .16, .10, .10


def test_a_row_that_knows_the_targets_time_does_not_stand_alone(tmp_path):
    put(tmp_path, 'HSTU', valid=0.15, skill=0.5, encoder='hstu')
    put(tmp_path, 'SASRec', valid=0.12, skill=0.2)
    stand = generative.contenders(rows_of(tmp_path))
    assert [r.label for r in stand.values()] == ['HSTU', 'SASRec']
    text = generative.printed_text(rows_of(tmp_path), 'amazon-toys')
    assert sum(c.startswith('verdict') for c in text) == 2


def test_verdicts_follow_the_printed_rule(tmp_path):
    put(tmp_path, 'SASRec', valid=0.12, skill=0.8)
    lines = generative.printed_lines(rows_of(tmp_path), 'amazon-toys')
    assert [
        rows.verdict(*r[['published', 'ours', 'low', 'high']]) for _, r in lines.iterrows()
    ] == lines.verdict.tolist()
    assert set(lines.verdict) <= {'above', 'reached', 'within noise', 'not reproduced'}


def test_what_is_not_run_is_said_with_its_command(tmp_path):
    text = generative.generative_markdown([], CONFIGS)
    assert text.count('No row of this set is recorded yet.') == 3
    for dataset in others.own_table:
        for encoder, similarity in generative.ours:
            for change in generative.budget(encoder, similarity):
                assert f'| {generative.command(dataset, encoder, similarity, change)} |' in text


@pytest.mark.parametrize('dataset', others.own_table)
def test_every_setting_of_the_budget_is_a_configuration_of_its_own(dataset):
    tried = [
        generative.same_but_seed(vars(load_config(CONFIGS / dataset / f'{e}-{s}.yaml', overrides=change)))
        for e, s in generative.ours
        for change in generative.budget(e, s)
    ]
    assert len(set(tried)) == len(tried) == 16


def test_figures_of_others_stand_under_the_block_of_their_ties_alone(tmp_path):
    for ties in ('stable', 'shuffled'):
        put(tmp_path, f'SASRec, {ties}', valid=0.3, skill=0.4, dataset='ml-1m', tie_order=ties, epochs=101)
    by_ties = {r.config['tie_order']: set(others.anchor_lines([r]).source) for r in read_folder(tmp_path)[0]}
    assert (
        'RecTools' in by_ties['stable'] - by_ties['shuffled']
        and 'public code' in by_ties['shuffled'] - by_ties['stable']
    )
    assert 'gSASRec' in by_ties['stable'] & by_ties['shuffled']  # says nothing of ties


def test_a_figure_by_the_public_rule_is_held_against_ranks_by_that_rule(tmp_path):
    put(tmp_path, 'SASRec', valid=0.3, skill=0.4, dataset='ml-1m', tie_order='shuffled', epochs=101)
    (run,) = read_folder(tmp_path)[0]
    said = others.anchor_lines([run]).set_index('source').verdict
    assert set(said['public code']) == {'not re-ranked'} and 'not re-ranked' not in set(said['NetEase'])


def test_the_block_shows_the_figures_of_others_and_their_findings(tmp_path):
    put(tmp_path, 'SASRec', valid=0.3, skill=0.4, dataset='ml-1m', tie_order='shuffled', epochs=101)
    put(
        tmp_path,
        'SASRec, MoL',
        valid=0.31,
        skill=0.5,
        similarity='mol',
        dataset='ml-1m',
        tie_order='shuffled',
        epochs=101,
    )
    block = blocks.make_block(rows.read_runs(tmp_path), 'block')
    for text in (page.block_markdown(block), page.block_html(block)):
        assert 'What others print' in text and 'HSTU-Tensorflow' in text and 'trained up to 30 times longer' in text
        assert 'Ours is SASRec, MoL, the row with the best HR@10 on validation, 0.310, of 2' in text
    assert 'What others print' not in page.block_markdown(block, brief=True)
