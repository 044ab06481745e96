"The figure of the idea: one pair of a recorded model, its logits and how much each counts. `python nbs/book/idea.py` draws it."

from pathlib import Path

import matplotlib

matplotlib.use('svg')
import matplotlib.pyplot as plt

from molrec.search.recommender import Recommender

ROOT = Path(__file__).resolve().parents[2]
RUN = 'reports/runs/ml-1m-leave-last-one-out-sasrec-mol-sampled-softmax-f92560f774fb'
SEEN, SHOWN = ['matrix', 'Alien', 'blade runner (1982)', 'The Terminator'], 'Aliens (1986)'
FIGURE = Path('nbs/guides/idea.svg')


def pair() -> tuple:  # logits and weights, (P_q, P_x) each
    "What MoL computes for the history `SEEN` and the film `SHOWN`."
    why = Recommender.load(ROOT / RUN).explain(SEEN, SHOWN)
    return why.logits[0].numpy(), why.gates[0].numpy()


def panel(ax, values, title: str, form: str, colours: str) -> None:
    "A grid of numbers."
    top = abs(values).max()
    ax.imshow(values, cmap=colours, vmin=-top if values.min() < 0 else 0, vmax=top, aspect='auto')
    for (row, column), v in [((r, c), values[r, c]) for r in range(values.shape[0]) for c in range(values.shape[1])]:
        white = abs(v) > 0.6 * top
        ax.text(column, row, format(v, form), ha='center', va='center', fontsize=9, color='white' if white else 'black')
    ax.set(xticks=range(values.shape[1]), yticks=range(values.shape[0]))
    ax.set_xticklabels([f'item {i + 1}' for i in range(values.shape[1])], fontsize=8)
    ax.set_yticklabels([f'query {i + 1}' for i in range(values.shape[0])], fontsize=8)
    ax.set_title(title, fontsize=10)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def draw(logits, weights, path: Path) -> None:
    "Logits, weights, and the score they make, side by side on white."
    matplotlib.rcParams.update({'svg.hashsalt': 'idea', 'font.family': 'DejaVu Sans'})
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.5), layout='constrained')
    panel(left, logits, r'logits $\delta_{nm}$: dot products', '.1f', 'RdBu_r')
    panel(right, weights, r'weights $\pi_{nm}$: they sum to 1', '.2f', 'Oranges')
    figure.supxlabel(
        rf'score $\phi = \sum_{{n,m}} \pi_{{nm}}\,\delta_{{nm}} = {(logits * weights).sum():.2f}$', fontsize=11
    )
    figure.savefig(path, metadata={'Date': None}, facecolor='white')


if __name__ == '__main__':
    draw(*pair(), ROOT / FIGURE)
    print(FIGURE)
