"`molrec evaluate` as it is typed."

import numpy as np
import pandas as pd
import pytest

from molrec.cli.main import main
from molrec.data.examples import write_text

TRUTH = 'user_id,item_id\nann,7\nbob,8\ncem,9\n'
OURS = 'user_id,item_id,rank\nann,7,1\nann,0007,2\nbob,8,1\ncem,9,1\n'
BM25 = 'ann Q0 0007 1 .9 bm25\nann Q0 7 2 .5 bm25\nbob Q0 8 1 .4 bm25\n'


@pytest.fixture
def here(tmp_path):
    for name, text in {'truth.csv': TRUTH, 'ours.csv': OURS, 'bm25.run': BM25}.items():
        write_text(tmp_path / name, text)
    return tmp_path


def test_two_systems_are_compared(here, capsys):
    assert (
        main(
            [
                'evaluate',
                *(str(here / f) for f in ('ours.csv', 'bm25.run')),
                '--truth',
                str(here / 'truth.csv'),
                '-k',
                '1',
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert 'bm25: users of the truth without a list, every target missed: 1 of 3' in said
    header, row = (next(line.split() for line in said.splitlines() if key in line) for key in ('p_holm', '0.6667'))
    assert header == 'metric a b difference low high p p_holm users'.split()
    assert row[:4] == ['hr@1', 'ours', 'bm25', '0.6667']


def test_judgements_of_trec_are_a_truth(here, capsys):
    write_text(here / 'truth.qrels', 'ann 0 7 1\nbob 0 8 1\ncem 0 9 1\n')
    assert main(['evaluate', str(here / 'bm25.run'), '--truth', str(here / 'truth.qrels'), '-k', '1']) == 0
    assert '0.3333' in capsys.readouterr().out


def test_ranks_of_two_records_need_no_truth(tmp_path, capsys):
    for name, ranks in (('a', [1, 2, 30]), ('b', [2, 2, 40])):
        (tmp_path / name).mkdir()
        table = pd.DataFrame(dict(user_id=[1, 2, 3], item_id=[7, 8, 9], rank=np.array(ranks)))
        table.to_parquet(tmp_path / name / 'ranks.parquet')
    assert main(['evaluate', *(str(tmp_path / n / 'ranks.parquet') for n in 'ab')]) == 0
    assert ['mrr', 'a', 'b'] in [line.split()[:3] for line in capsys.readouterr().out.splitlines()]


def test_users_of_one_alone_are_an_error(tmp_path, capsys):
    for name, users in (('a', [1, 2, 3]), ('b', [1, 2, 4])):
        (tmp_path / name).mkdir()
        pd.DataFrame(dict(user_id=users, item_id=[7, 8, 9], rank=[3, 5, 9])).to_parquet(
            tmp_path / name / 'ranks.parquet'
        )
    assert main(['evaluate', *(str(tmp_path / n / 'ranks.parquet') for n in 'ab')]) == 1
    assert 'user 3 is in a alone' in capsys.readouterr().err


def test_the_same_twice_is_an_error(here, capsys):
    assert main(['evaluate', *[str(here / 'ours.csv')] * 2, '--truth', str(here / 'truth.csv')]) == 1
    assert 'is named twice, wanted different systems' in capsys.readouterr().err
