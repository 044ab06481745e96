"An index that is shared, changed, copied, filed by strangers, and asked oddly: what holds for every kind."

import copy
import os
import pickle
import random
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from test_index import D, every, has, kinds, mol, same, spiteful

from molrec.base.errors import ConfigError, DataError
from molrec.data.sequences import Sequences
from molrec.search import stored
from molrec.search.exact import Exact
from molrec.search.h_indexer import HIndexer
from molrec.search.index import BruteForce, Index, kinds_of
from molrec.settings.parts import parts
from molrec.similarities.dot import Dot, Head

N = 700


def corpus(seed=0, n=N):
    return torch.randn(n, D, dtype=torch.float32, generator=torch.Generator().manual_seed(seed))


def built(kind, n=N, model=None, **settings):
    sizes = {name: value for name, value in dict(k_prime=60, k_each=20).items() if has(kind, name)}
    return kind.build(model or mol(), corpus(n=n), **sizes | settings)


# -- threads --


@every
def test_eight_threads_and_changes_see_one_state_each(kind):
    "Requests of different sizes while items come and go: every answer is that of a state there was, bit for bit."
    index, queries = built(kind), corpus(1, 150)
    new = corpus(2, 30)
    asks = [
        dict(queries=queries[:b], k=k, exclude=e)
        for b, k, e in ((1, 5, None), (3, 40, [1, 2]), (70, 3, None), (150, 9, None), (2, 1, [[5], [6, 7]]))
    ]

    def answers():
        return [tuple(t.tolist() for t in index.search(**ask)) for ask in asks]

    states = [answers()]
    for i in range(0, 30, 10):
        index.add(range(9000 + i, 9010 + i), new[i : i + 10])
        states.append(answers())
    index.remove(range(9000, 9030))
    assert answers() == states[0]
    stop, failed = threading.Event(), []

    def ask(seed):
        rng = random.Random(seed)
        while not stop.is_set():
            i = rng.randrange(len(asks))
            found = tuple(t.tolist() for t in index.search(**asks[i]))
            if found not in [state[i] for state in states]:
                failed.append((seed, i))
        return True

    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(ask, seed) for seed in range(7)]
        for _ in range(4):
            for i in range(0, 30, 10):
                index.add(range(9000 + i, 9010 + i), new[i : i + 10])
            index.remove(range(9000, 9030))
        stop.set()
        assert all(r.result() for r in running) and not failed
    assert answers() == states[0]


def test_two_who_add_at_once_both_have_added():
    index = built(BruteForce)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: index.add([2000 + i], corpus(3, 40)[i : i + 1]), range(40)))
    assert len(index) == N + 40 and set(range(2000, 2040)) <= set(index.ids.tolist())


def test_settings_of_a_search_are_those_of_its_beginning(monkeypatch):
    "Somebody changes k' while a search is under way: that search does not see it."
    from molrec.search import component_mean as module

    index, plain = built(kinds[2], k_prime=N), module.nearest
    expected = index.search(corpus(1, 2), 5)

    def meddling(search, *rest):
        index.change(k_prime=1)
        return plain(search, *rest)

    monkeypatch.setattr(module, 'nearest', meddling)
    assert same(index.search(corpus(1, 2), 5), expected) and index.settings.k_prime == 1


# -- interrupted changes --


class Stop(BaseException):
    "Ctrl-C, or whatever comes at a bad moment."


@every
def test_a_change_that_is_interrupted_anywhere_leaves_the_old_index(kind, monkeypatch):
    "Every line of the modules that change an index raises once; the index is as before, or as after, never between."
    index, queries = built(kind, n=200), corpus(1, 3)
    new, other = corpus(4, 3), corpus(5, 2)

    def look():
        return tuple(t.tolist() for t in index.search(queries, 9)), sorted(index.ids.tolist())

    changes = dict(
        add=lambda: index.add([900, 901, 902], new),
        remove=lambda: index.remove([3, 4]),
        update=lambda: index.update([10, 11], other),
    )
    undo = dict(
        add=lambda: index.remove([900, 901, 902]),
        remove=lambda: index.add([3, 4], corpus(n=200)[3:5]),
        update=lambda: index.update([10, 11], corpus(n=200)[10:12]),
    )
    homes = {p.home.partition(':')[0].rpartition('.')[2] for p in parts['index'].values()}
    files = tuple(f'molrec{os.sep}search{os.sep}{name}.py' for name in ('stored', 'asking', *homes))
    for name, change in changes.items():
        before = look()
        change()
        after = look()
        undo[name]()
        assert look() == before
        count, rng = 0, random.Random(0)

        def lines_of(run, at):
            "Run with an exception at the n-th line; how many lines there were."
            seen = [0]

            def trace(frame, event, arg):
                if not frame.f_code.co_filename.endswith(files):
                    return None
                if event == 'line':
                    seen[0] += 1
                    if seen[0] == at:
                        raise Stop
                return trace

            sys.settrace(trace)
            try:
                run()
            finally:
                sys.settrace(None)
            return seen[0]

        count = lines_of(change, 0)
        undo[name]()
        tries, stopped = sorted(rng.sample(range(1, count + 1), min(25, count))), 0
        for at in tries:
            try:
                lines_of(change, at)  # where a buffer has room already it takes fewer lines than before
            except Stop:
                stopped += 1
            state = look()
            assert state in (before, after), (name, at)
            if state == after:
                undo[name]()
            assert look() == before
        assert stopped > len(tries) * 3 / 4


def test_memory_that_runs_out_leaves_the_old_index(monkeypatch):
    index, queries = built(BruteForce), corpus(1, 3)
    before = index.search(queries, 9)

    def short(room, like):
        raise RuntimeError('not enough memory')

    monkeypatch.setattr(stored, 'empty_rows', short)
    with pytest.raises(RuntimeError, match='not enough memory'):
        index.add(range(1000, 1000 + 8 * N), corpus(6, 8 * N))
    assert same(index.search(queries, 9), before) and len(index) == N


@pytest.mark.skipif(not os.path.exists('/proc/self/statm'), reason='reads resident memory from /proc')
def test_adding_one_item_costs_what_is_added():
    def mib():
        return int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2**20

    index = BruteForce.build(Dot(normalise=False), torch.randn(300_000, 64), storage='fp32')  # 73 MiB
    before = mib()
    for i in range(50):
        index.add([10**6 + i], torch.ones(1, 64))
    assert mib() - before < 12 and len(index) == 300_050  # a large page or two for each column


# -- copies --


@every
def test_pickles_and_copies_before_and_after_a_search(kind):
    index, queries = built(kind), corpus(1, 5)

    def copies():
        return pickle.loads(pickle.dumps(index)), copy.deepcopy(index), copy.copy(index)

    early, truth = copies(), index.search(queries, 7)
    index.remove([0, 1])
    for one in early[:2]:
        assert same(one.search(queries, 7), truth) and len(one) == N  # what is done to one is not done to another
    later = index.search(queries, 7)
    for one in copies():
        assert type(one) is kind and same(one.search(queries, 7), later)
        one.add([0, 1], corpus()[:2])
        assert same(one.search(queries, 7), truth)
    assert same(index.search(queries, 7), later)


def test_a_pickle_holds_rows_and_not_the_room_behind_them():
    index = built(BruteForce)
    assert len(pickle.dumps(index)) < 40 * index.memory_bytes() < 10**7


@every
def test_two_that_share_columns_do_not_disturb_each_other(kind):
    index, queries = built(kind), corpus(1, 4)
    other = BruteForce.over(index)
    index.add([5000], corpus(7, 1))
    other.add([6000], corpus(8, 1))
    assert 5000 in index.ids and 6000 not in index.ids and 6000 in other.ids
    assert same(
        other.search(queries, 9),
        BruteForce.build(mol(), torch.cat([corpus(), corpus(8, 1)]), [*range(N), 6000]).search(queries, 9),
    )


# -- files --


@pytest.fixture(scope='module')
def filed(tmp_path_factory):
    index = HIndexer.build(mol(), corpus(n=40), head=Head(D, 4), k_prime=20)
    index.save(path := tmp_path_factory.mktemp('filed') / 'it')
    return index, path


def forged(path, to, change):
    "A file with other contents, correctly sealed."
    about, tensors, opened = stored.read_tensors(path, 'ram')
    about, tensors = change(dict(about), dict(tensors))
    if 'sha256' in about and about['sha256'] != 'kept':
        about['sha256'] = stored.content_sha256(tensors)
    stored.write_tensors(to, tensors, about)
    return to


odd = [None, True, -1, 0, 3, 2**31, 2**63, 10**30, 1.5, 'x', '', [], {}, [1], {'a': 1}]


def test_hostile_files_are_refused_or_right(filed, tmp_path):
    "Sealed by somebody who can seal: fields of the header, settings, names, shapes and types of columns, numbers in them."
    index, path = filed
    head, queries = index.head, corpus(1, 3)
    about, tensors, _ = stored.read_tensors(path, 'ram')
    changes = [lambda a, t, f=f, v=v: (a | {f: v}, t) for f in (*about, 'more') for v in odd if f != 'version']
    changes += [
        lambda a, t, s=s, v=v: (a | dict(settings=a['settings'] | {s: v}), t)
        for s in (*about['settings'], 'impl', 'device')
        for v in odd
    ]
    changes += [lambda a, t, n=n: (a, {k: v for k, v in t.items() if k != n}) for n in tensors]

    def reshaped(x):
        return [
            x[:-1],
            x[:0],
            x[..., None],
            x[None],
            x.repeat_interleave(2, 0),
            x.flatten(),
            x.float() if x.dtype != torch.float32 else x.to(torch.bfloat16),
            x.to(torch.int64) if x.dtype != torch.int64 else x.int(),
        ]

    changes += [lambda a, t, n=n, i=i: (a, t | {n: reshaped(t[n])[i]}) for n in tensors for i in range(8)]
    changes += [
        lambda a, t, n=n, v=v: (a, t | {n: torch.full_like(t[n].float(), v).to(t[n].dtype)})
        for n in tensors
        if tensors[n].is_floating_point()
        for v in (float('nan'), float('inf'))
    ]
    changes += [
        lambda a, t, ids=ids: (a, t | dict(ids=torch.tensor(ids)))
        for ids in ([-1, *range(39)], [0, 0, *range(2, 40)], [2**63 - 1, *range(39)])
    ]
    changes += [lambda a, t: (a, t | {'item.7.values': torch.zeros(40, 3)}), lambda a, t: (a, {}), lambda a, t: ({}, t)]
    refused = 0
    for i, change in enumerate(changes):
        try:
            forged(path, tmp_path / 'bad', change)
        except (KeyError, ValueError, RuntimeError, TypeError):
            continue  # a type that no file of ours can hold
        for memory, verify in (('map', True), ('ram', True), ('map', False)):
            try:
                loaded = Index.load(tmp_path / 'bad', mol(), head=head, memory=memory, verify=verify)
            except DataError as e:
                refused += 1
                assert 'bad' in str(e)
                continue
            try:
                assert loaded.search(queries, 50)[1].shape == (3, 50), i
            except (DataError, RuntimeError):
                assert not verify, i  # numbers that nobody compared: an error, never a crash
    assert len(changes) > 290 and refused > 700


def test_a_file_that_is_replaced_and_one_that_is_overwritten(filed, tmp_path):
    index, path = filed
    shutil.copy(path, tmp_path / 'it')
    queries = corpus(1, 3)
    loaded, safe = (Index.load(tmp_path / 'it', mol(), head=index.head, memory=memory) for memory in ('map', 'ram'))
    expected = index.search(queries, 5)
    BruteForce.build(mol(), corpus(9, 40)).save(tmp_path / 'it')  # renamed over it
    assert same(loaded.search(queries, 5), expected) and same(safe.search(queries, 5), expected)
    shutil.copy(path, tmp_path / 'other')
    loaded, safe = (Index.load(tmp_path / 'other', mol(), head=index.head, memory=memory) for memory in ('map', 'ram'))
    with open(tmp_path / 'other', 'r+b') as f:
        f.seek(-4, 2)
        f.write(b'\1\2\3\4')
        f.flush()
        os.utime(tmp_path / 'other', ns=(1, 1))
    with pytest.raises(DataError, match='other: was written to while it was mapped'):
        loaded.search(queries, 5)
    assert same(safe.search(queries, 5), expected)


def test_loads_during_saves_never_mix(tmp_path):
    "Two indexes take turns under one name: what is loaded is one of them."
    model, pair = Dot(normalise=False), [torch.full((3000, 4), float(i)) for i in (1, 2)]
    built = [BruteForce.build(model, x, storage='fp32') for x in pair]
    built[0].save(tmp_path / 'it')
    stop = threading.Event()

    def write():
        while not stop.is_set():
            for b in built:
                b.save(tmp_path / 'it')

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for i in range(60):
            found = Index.load(tmp_path / 'it', model, verify=bool(i % 2), memory=('map', 'ram')[i // 2 % 2]).search(
                torch.ones(1, 4), 3000
            )[0]
            assert found.unique().numel() == 1
    finally:
        stop.set()
        thread.join()


# -- questions --


def test_a_thousand_odd_calls_are_answered_or_refused_in_our_words():
    index = built(Exact, n=60)
    rng = random.Random(0)
    queries = [
        corpus(1, 2),
        corpus(1, 2).numpy(),
        corpus(1, 2).double(),
        corpus(1, 2).half(),
        corpus(1, 2).tolist(),
        corpus(1, 2).bfloat16(),
        corpus(1, 4)[::2],
        corpus(1, D).T[:2],
        corpus(1, 0),
        corpus(1, 2) * 1e30,
        corpus(1, 2) * 0,
        corpus(1, 2) * float('inf'),
        corpus(1, 2)[0],
        corpus(1, 2)[:, :2],
        None,
        'x',
        3,
        [],
        [[]],
        [['a'] * D],
        {},
        np.ones((2, D), int),
        np.ones((2, D), complex),
        pd.DataFrame(corpus(1, 2).numpy()),
        torch.ones(2, D).requires_grad_(),
        np.ones((2, D), object),
        np.broadcast_to(np.float32(1), (2, D)),
    ]
    ids = [
        None,
        [],
        3,
        np.int8(3),
        '3',
        [1, 2],
        (1, 2),
        {1, 2},
        range(3),
        np.arange(3),
        np.arange(3, dtype=np.uint64),
        np.array([2**63], np.uint64),
        [2**63],
        [2**200],
        [-5],
        [1.0],
        [1.5],
        [True, False],
        [None],
        [[1], [2]],
        ([1], [2]),
        [{1}, None],
        [[1], 2],
        [['a'], ['b']],
        torch.tensor([1, 2]),
        torch.tensor([[1], [2]]),
        torch.tensor(3),
        torch.tensor([1.0]),
        pd.Series([1, 2]),
        pd.Series(['a']),
        pd.Series([1, None]),
        pd.Index([1]),
        pd.Series([1, 2], dtype='Int64'),
        np.array(['1']),
        np.array([1, 'a'], object),
        np.array([1, 2], object),
        np.datetime64('2024-01-01'),
        b'1',
        {1: 2},
        object(),
        (x for x in [1]),
        np.ones(60, bool),
        [True] * 60,
        torch.zeros(60, dtype=torch.bool),
        np.ones(59, bool),
        Sequences([0, 1], [0, 1, 2], [5, 6]),
        Sequences([0], [0, 3], [5, 6]),
        [[]] * 2,
        [[]] * 3,
        np.zeros((2, 0), int),
        np.zeros((2, 2, 2), int),
        [np.int64(1), 2],
        ['1', 2],
    ]
    counts = [
        1,
        3,
        200,
        np.int64(2),
        torch.tensor(2),
        0,
        -1,
        2.0,
        True,
        '2',
        None,
        [2],
        2**40,
        np.float32(2),
        2**31 - 1,
    ]
    calls = refused = 0
    for _ in range(1000):
        call = dict(
            queries=rng.choice(queries[:8] if rng.random() < 0.7 else queries),
            k=rng.choice(counts[:5] if rng.random() < 0.8 else counts[:-1]),
            exclude=rng.choice(ids),
            allow=rng.choice(ids),
            users=rng.choice(ids) if rng.random() < 0.2 else None,
        )
        calls += 1
        try:
            scores, found = index.search(**call)
        except (ConfigError, DataError) as e:
            refused += 1
            assert str(e).split(':')[0] in ('queries', 'k', 'exclude', 'allow', 'users'), e
            continue
        assert (
            scores.shape == found.shape
            and scores.dtype == torch.float32
            and not scores.isnan().any()
            and ((found == -1) == (scores == -torch.inf)).all()
        )
    assert 200 < refused < 900
    for change in (index.add, index.update):
        for x in ids + queries:
            for items in rng.sample(queries, 4):
                try:
                    change(x, items)
                except DataError as e:
                    assert str(e).split(':')[0] in ('ids', 'items'), e
    for x in queries + [i for i in ids if i is not None]:
        try:
            index.remove(x)
        except DataError as e:
            assert str(e).startswith('ids: '), e


def test_every_form_of_the_same_ids_is_the_same():
    index, queries = built(BruteForce), corpus(1, 2)
    forms = (
        [3, 5],
        (3, 5),
        {3, 5},
        np.array([3, 5], np.int16),
        np.array([3, 5], np.uint64),
        torch.tensor([3, 5]),
        pd.Series([3, 5]),
        pd.Index([3, 5]),
        [np.int64(3), 5],
        np.array([3, 5], object),
    )
    allowed, excluded = index.search(queries, 4, allow=[3, 5]), index.search(queries, 4, exclude=[[3, 5], [3, 5]])
    for ids in forms:
        assert same(index.search(queries, 4, allow=ids), allowed)
        assert same(index.search(queries, 4, exclude=ids), excluded) and same(
            index.search(queries, 4, exclude=(ids, ids)), excluded
        )
    assert same(index.search(queries, 4, exclude=[3, 5]), excluded)  # ids alone: for everybody
    own = index.search(queries, 4, exclude=([3], [5]))  # two lists, whatever holds them
    assert 3 in index.search(queries, N, exclude=([3], [5]))[1][1] and same(
        index.search(queries, 4, exclude=[[3], [5]]), own
    )


@every
def test_what_the_program_around_has_set_changes_nothing(kind):
    model, index, queries = mol(), built(kind), corpus(1, 70)
    plain = index.search(queries, 9)
    try:
        torch.set_default_dtype(torch.float64)
        assert same(index.search(queries, 9), plain)
        assert same(built(kind, model=model).search(queries, 9), plain)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            assert same(index.search(queries.double(), 9), plain) and same(
                built(kind, model=model).search(queries.numpy(), 9), plain
            )
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.inference_mode():
        assert same(index.search(queries, 9), plain)
    assert same(index.search(queries.clone().requires_grad_(), 9), plain)


@every
@pytest.mark.parametrize('size', [1e2, 1e4, 1e6])
def test_every_item_as_candidate_gives_brute_forces_list_on_saturated_gates(kind, size):
    "With weights so large that the last digit of a logit decides which logit is taken: default arithmetic loses nobody."
    model = spiteful(mol())
    for p in model.gate_query.parameters():
        p.mul_(size)
    sizes = {name: N for name in ('k_prime', 'k_each') if has(kind, name)}
    assert same(
        kind.build(model, corpus(), **sizes).search(corpus(1, 20), 15),
        BruteForce.build(model, corpus()).search(corpus(1, 20), 15),
    )


def test_queries_of_any_length():
    index = built(BruteForce)
    plain = BruteForce.build(Dot(), corpus())
    for factor in (1e-20, 5e9, 1e19, 1e37):
        assert (
            torch.equal(plain.search(corpus(1, 5) * factor, 9)[1], plain.search(corpus(1, 5), 9)[1])
            and torch.isfinite(index.search(corpus(1, 5) * factor, 9)[0]).all()
        )
    assert plain.search(torch.zeros(1, D), 3)[1].tolist() == [[0, 1, 2]]  # all score alike: the lowest ids
    with pytest.raises(DataError, match='queries: row 0 has NaN or infinity'):
        plain.search(torch.full((1, D), torch.inf), 3)


def test_every_kind_is_known_by_its_name():
    assert set(kinds_of(Index)) >= {kind.__name__ for kind in kinds}
    assert {p.load() for p in parts['index'].values()} == set(kinds)


@every
def test_a_file_is_known_by_its_kind_where_nobody_read_its_page(kind, tmp_path):
    "The page of a kind is read when its name is met, in a file or in an import of the base page."
    built(kind, n=30).save(tmp_path / 'it')
    asked = (
        'import sys, torch; from molrec.search.index import Index; from molrec.similarities.mol import MoL; torch.manual_seed(0)\n'
        'model = MoL(6, 3, 2, 4, query_hidden=8, gate_hidden=8).eval()\n'
        "print('molrec.search.lists' in sys.modules, type(Index.load(sys.argv[1], model)).__name__)\n"
        f'from molrec.search import {kind.__name__}'
    )
    said = subprocess.run([sys.executable, '-c', asked, tmp_path / 'it'], capture_output=True, text=True)
    assert said.stdout.split() == ['False', kind.__name__] and not said.stderr


def test_public_classes_have_their_methods_inside():
    "No method is put on a class from outside: an editor, a type checker and a reader find them."
    import ast
    import inspect

    for kind in [Index, *kinds]:
        tree = ast.parse(inspect.getsource(sys.modules[kind.__module__]))
        assert not [n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == 'patch']
        inside = {
            c.name: {f.name for f in c.body if isinstance(f, ast.FunctionDef)}
            for c in tree.body
            if isinstance(c, ast.ClassDef)
        }
        assert {name for name, value in vars(kind).items() if inspect.isfunction(value)} <= inside[kind.__name__]
