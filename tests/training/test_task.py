"A second task needs no change of the loop: was a film liked? It learns, and goes on bit for bit after a kill."

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from molrec.training import Recipe, State, Task, train

RECIPE = Recipe(lr=2e-2, warmup_steps=5, patience=9)


@dataclass(frozen=True)
class Ratings:
    "Who rated what, and whether with four stars or more."

    users: Tensor
    items: Tensor
    targets: Tensor

    def at(self, rows):
        return Ratings(self.users[rows], self.items[rows], self.targets[rows])

    def to(self, device):
        return Ratings(*(t.to(device) for t in vars(self).values()))


class Shuffled:
    "Ratings in an order of the epoch's own."

    def __init__(self, ratings, size=64):
        self.ratings, self.size = ratings, size

    def __len__(self):
        return -(-len(self.ratings.targets) // self.size)

    def epoch(self, e, start=0):
        order = torch.randperm(len(self.ratings.targets), generator=torch.Generator().manual_seed(e))
        return (self.ratings.at(rows) for rows in order.split(self.size)[start:])


def ratings(n_users=40, n_items=30, n=1500):
    "Stars that follow from two hidden tastes, a fifth of them held out."
    draw = torch.Generator().manual_seed(0)
    taste, kind = torch.randn(n_users, 2, generator=draw), torch.randn(n_items, 2, generator=draw)
    users, items = (torch.randint(m, (n,), generator=draw) for m in (n_users, n_items))
    stars = (3.5 + (taste[users] * kind[items]).sum(1)).round().clamp(1, 5)
    whole = Ratings(users, items, (stars >= 4).float())
    return whole.at(slice(0, n * 4 // 5)), whole.at(slice(n * 4 // 5, n))


class Tower(nn.Module):
    "A small network on a user's and a film's embedding."

    def __init__(self):
        super().__init__()
        self.user, self.item = nn.Embedding(40, 8), nn.Embedding(30, 8)
        self.head = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 1))

    def forward(self, batch):
        u, i = self.user(batch.users), self.item(batch.items)
        return self.head(torch.cat([u, i, u * i], 1))[:, 0]


class Liked(Task):
    "Will this user give this film four stars or more?"

    watch, unit, epochs = 'auc', 'ratings', 6

    def __init__(self):
        train_part, self.valid = ratings()
        self.batches = Shuffled(train_part)

    def loss(self, model, batch):
        small = 1e-4 * model.item(batch.items).square().mean()
        return dict(liked=F.binary_cross_entropy_with_logits(model(batch), batch.targets), small=small)

    @torch.no_grad()
    def evaluate(self, model, part):
        training, scores = model.training, model.eval()(self.valid)
        model.train(training)
        liked = self.valid.targets > 0
        wins = (scores[liked, None] > scores[~liked]).float().mean()
        return dict(auc=wins.item())


def a_run(folder=None, **more):
    torch.manual_seed(0)
    return train(Liked(), Tower(), RECIPE, folder, dict(task='liked'), progress=False, **more)


def test_it_learns():
    history = a_run().book['history']
    assert list(history[0]) == ['stage', 'epoch', 'loss', 'time_s', 'ratings_per_s', 'valid_auc']
    assert max(entry['valid_auc'] for entry in history) > 0.65  # chance is .5, with an error of .03
    assert history[-1]['loss'] < history[0]['loss']


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_bit_for_bit(tmp_path, monkeypatch):
    whole, saves, save = a_run(), 0, State.save

    def dying(self, *args):
        nonlocal saves
        save(self, *args)
        saves += 1
        if saves == 30:  # of nineteen steps and a close each: in the second epoch
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(State, 'save', dying)
        with pytest.raises(Killed):
            a_run(tmp_path, save_every_s=0)
    steps = []
    resumed = a_run(tmp_path, on_gradients=lambda part: steps.append(part))
    assert len(steps) == whole.book['step'] - 29  # nothing is done twice
    a, b = whole.tensors(), resumed.tensors()
    assert set(a) == set(b)
    assert all(a[k].numpy().tobytes() == b[k].numpy().tobytes() for k in a)
    assert [e['loss'] for e in whole.book['history']] == [e['loss'] for e in resumed.book['history']]


def test_the_loop_knows_no_model_room():
    import subprocess
    import sys

    rooms = 'encoders', 'similarities', 'tasks', 'search'
    ask = f'import sys, molrec.training.loop; print(*[m for m in sys.modules if m.startswith("molrec.") and m.split(".")[1] in {rooms}])'
    done = subprocess.run([sys.executable, '-c', ask], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
