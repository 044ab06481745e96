"How far something is, as a terminal and a notebook show it."

import re
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import nbformat
from nbclient import NotebookClient

from molrec.base.progress import progress_bar

TRAINING = """
from torch import nn
from molrec.training import loop
from molrec.training.examples import Line
from molrec.training.optimisers import Recipe
bar_of = loop._bar_of

def eager(*told):
    "Every state of the bar is printed, and not ten a second."
    bar = bar_of(*told)
    bar.mininterval = 0
    return bar

loop._bar_of = eager
state = loop.train(Line(epochs=2), nn.Linear(1, 1), Recipe(lr=0.1), label='a line')
"""


def test_a_terminal_shows_it_beside_the_results():
    with redirect_stdout(StringIO()) as results, redirect_stderr(StringIO()) as aside:
        with progress_bar(2, desc='lists') as bar:
            bar.update(2)
        with progress_bar(2, shown=False) as bar:
            bar.update(2)
    assert results.getvalue() == '' and aside.getvalue().count('lists: 100%') == 1


def test_a_notebook_shows_a_bar_that_runs_and_no_figure_that_was_not_measured():
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(TRAINING)])
    outputs = NotebookClient(page, timeout=120, kernel_name='python3').execute().cells[0].outputs
    assert {(o.output_type, o.get('name')) for o in outputs} == {('stream', 'stdout')}  # standard error is red there
    states = ''.join(o.text for o in outputs).strip().split('\r')
    valid = [found[1] for s in states if (found := re.search(r'squared error=([^\],]+)', s))]
    assert all(s.startswith('a line: ') for s in states) and states[-1].startswith('a line: 100%')
    assert valid[0] == '–' and '0.0000' not in valid and 'epoch=2/2' in states[-1] and float(valid[-1]) < 0
