"What every protocol promises, on data that a seed makes up; and that the new ones are settings of a run to the end."

import dataclasses

import numpy as np
import pandas as pd
import pytest

from molrec.base.errors import ConfigError, DataError
from molrec.data.examples import ring
from molrec.data.splits import by_order, split
from molrec.settings.config import Config, config_hash, make_config
from molrec.settings.parts import parts, settings_of

DAY = 86_400
PROTOCOLS = sorted(parts['protocol'])
NEW = ['held-out-users', 'own-column', 'leave-last-k-out', 'time-gap', 'user-time-fraction']
HOW = {'time-gap': dict(valid_share=0.2, test_share=0.2, gap_days=5)}


def world(seed, users=60, items=25, days=120):
    "Users of different length, times that tie, items that come again."
    rng = np.random.default_rng(seed)
    n = rng.integers(1, 40, users)
    user = np.repeat(np.arange(users), n)
    made = dict(user_id=user, item_id=rng.integers(0, items, n.sum()), timestamp=DAY * rng.integers(0, days, n.sum()))
    made['split'] = rng.choice(['train', 'train', 'train', 'validation', 'test'], n.sum())
    return pd.DataFrame(made).drop_duplicates(['user_id', 'timestamp']).sort_values('timestamp', ignore_index=True)


def events(q):
    "User, item and time of every event."
    return {*zip(np.repeat(q.users, q.lengths).tolist(), q.items.tolist(), q.times.tolist())}


@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_nothing_that_is_asked_is_trained_on_or_shown_and_every_target_is_asked_once(protocol, seed):
    s = split(world(seed), protocol, max_length=10**6, **HOW.get(protocol, {}))
    assert len(s.train) and len(s.valid) and len(s.test)
    valid, test = events(s.valid.targets), events(s.test.targets)
    assert not events(s.train) & (valid | test) and not valid & test
    for part in (s.valid, s.test):
        assert not events(part.history) & events(part.targets)
        assert part.users.tolist() == part.history.users.tolist() == part.targets.users.tolist()
        assert (part.history.lengths > 0).all() and (part.targets.lengths > 0).all()
        assert all(len(set(part.targets[i])) == len(part.targets[i]) for i in range(len(part)))
        last = part.history.times[part.history.offsets[1:] - 1]
        assert (last <= part.targets.times[part.targets.offsets[:-1]]).all(), 'what is asked comes after what is shown'


@pytest.mark.parametrize('protocol', NEW)
def test_validation_knows_nothing_of_the_test(protocol):
    s = split(world(2), protocol, max_length=10**6, **HOW.get(protocol, {}))
    assert not events(s.valid.history) & events(s.test.targets)


def test_the_last_k_and_the_k_before():
    df = world(3)
    one, three = split(df, 'leave-last-k-out', last_k=1), split(df, 'leave-last-k-out', last_k=3)
    published = split(df)
    assert (one.test.targets.items == published.test.targets.items).all() and (
        one.train.items == published.train.items
    ).all()
    sizes = df.groupby('user_id').size()
    assert three.test.users.tolist() == sizes.index[sizes > 6].tolist()
    whole = {u: rows.sort_values('timestamp', kind='stable') for u, rows in df.groupby('user_id')}
    for i, u in enumerate(three.test.users):
        assert set(three.item_ids[three.test.targets[i]]) == set(whole[u].item_id[-3:])
        assert three.item_ids[three.test.history[i]].tolist() == whole[u].item_id[:-3].tolist()


def test_a_gap_is_in_no_part_and_training_ends_before_it():
    df = world(4)
    s = split(df, 'time-gap', gap_days=7, valid_from='1970-03-01', test_from='1970-04-01')
    march, april = (int(np.datetime64(m, 's').astype(int)) for m in ('1970-03-01', '1970-04-01'))
    assert s.train.times.max() < march - 7 * DAY <= s.test.history.times.max() < april - 7 * DAY
    assert march <= s.valid.targets.times.min() and s.valid.targets.times.max() < april - 7 * DAY
    assert april <= s.test.targets.times.min() and s.valid.history.times.max() < march - 7 * DAY
    assert set(s.test.targets.items) <= set(s.train.items) and set(s.test.users) <= set(s.train.users)
    at_once = split(df, 'time-gap', gap_days=0, valid_from='1970-03-01', test_from='1970-04-01')
    assert len(at_once.train.items) == (df.timestamp < march).sum() > len(s.train.items)


def test_a_share_of_each_user():
    s = split(ring(), 'user-time-fraction', valid_share=0.25, test_share=0.25, max_length=10**6)
    n = ring().groupby('user_id').size().loc[s.user_ids[s.test.users]].to_numpy()
    assert (s.test.targets.lengths == np.maximum(1, n // 4)).all()
    assert (s.test.history.lengths + s.test.targets.lengths == n).all()


def test_users_that_are_held_out_are_strangers_and_the_draw_is_by_its_seed():
    s, same, other = (split(ring(), 'held-out-users', user_seed=seed) for seed in (0, 0, 1))
    assert len(s.valid) == len(s.test) == 6 and not {*s.valid.users, *s.test.users} & {*s.train.users}
    assert not {*s.valid.users} & {*s.test.users} and len(s.train) == 48
    assert s.fingerprint == same.fingerprint != other.fingerprint


def test_every_rule_and_every_setting_of_one_has_a_fingerprint_of_its_own():
    df = world(5)
    ways = [('leave-last-k-out', dict(last_k=k)) for k in (1, 2)] + [('time-gap', dict(gap_days=g)) for g in (0, 9)]
    ways += [('user-time-fraction', dict(test_share=x)) for x in (0.1, 0.3)] + [
        (p, {}) for p in ('leave-last-one-out', 'global-time', 'held-out-users')
    ]
    assert len({split(df, p, **how).fingerprint for p, how in ways}) == len(ways)


def test_a_setting_of_a_protocol_is_in_the_name_of_a_run_only_where_it_is_read_and_changed():
    plain, k = Config(protocol='leave-last-k-out'), make_config(dict(protocol='leave-last-k-out', last_k=3))
    assert config_hash(plain) == config_hash(make_config(dict(protocol='leave-last-k-out', last_k=2))) != config_hash(k)
    assert config_hash(dataclasses.replace(Config(), last_k=5, gap_days=3.0)) == config_hash(Config())
    assert dataclasses.asdict(settings_of(k, 'protocol')) == dict(last_k=3)
    with pytest.raises(
        ConfigError, match='gap_days: got 2.0 with protocol global-time, which has no such setting; it belo'
    ):
        make_config(dict(protocol='global-time', gap_days=2.0))
    with pytest.raises(ConfigError, match='test_share: got valid_share 0.5 and test_share 0.5, which leave nothing'):
        make_config(dict(protocol='time-gap', valid_share=0.5, test_share=0.5))


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_without_times_the_order_of_rows_is_enough_for_those_that_say_so(protocol):
    df = world(7).drop(columns='timestamp')
    if protocol in by_order:
        assert len(split(df, protocol).test)
    else:
        with pytest.raises(DataError, match='needs timestamps'):
            split(df, protocol)


@pytest.mark.parametrize('protocol', NEW)
def test_a_run_with_it_goes_to_the_lists(protocol, tmp_path):
    from molrec.search.recommender import Recommender

    own = dict(columns='split=split') if protocol == 'own-column' else {}
    settings = dict(protocol=protocol, encoder='popularity', **own, **HOW.get(protocol, {}))
    rec = Recommender.fit(world(6), tmp_path, progress=False, **settings)
    assert rec.record['split']['protocol'] == protocol and f'-{protocol}-' in rec.record['id']
    assert rec.record['config']['columns'] == own.get('columns', '')
    assert len(rec.recommend([0, 1], k=3)) and 0 <= rec.metrics['hr@10'] <= 1


def test_a_column_of_ones_own_is_part_of_what_the_data_are(tmp_path):
    from molrec.data.doors import content_sha256, read_interactions

    df = world(8)
    df.rename(columns=dict(split='fold')).to_csv(tmp_path / 'mine.csv', index=False)
    plain, named = (read_interactions(tmp_path / 'mine.csv', columns=c).interactions for c in ('', 'split=fold'))
    other = named.assign(split=np.where(named['split'] == 'test', 'train', named['split']))
    assert len({content_sha256(d) for d in (plain, named, other)}) == 3 and 'split' not in plain
    assert split(named, 'own-column').fingerprint == split(df, 'own-column').fingerprint
