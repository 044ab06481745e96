"Settings: ranges, what belongs to which part, what a run is called, and files of settings that mean harm."

import dataclasses
import itertools
import json
import math
import random
import time
from pathlib import Path

import pytest
import yaml

from molrec.base.errors import ConfigError
from molrec.settings.config import (
    Config,
    canonical,
    choices,
    config_hash,
    load_config,
    make_config,
    parse_overrides,
    read_row,
    run_id,
)
from molrec.settings.parts import outside
from molrec.settings.yaml_file import read_yaml, yaml_value

ROOT = Path(__file__).resolve().parents[2]
FIELDS = {f.name: f for f in dataclasses.fields(Config)}
NUMBERS = [n for n, f in FIELDS.items() if f.type in (int, float, 'int', 'float')]


# -- ranges --


@pytest.mark.parametrize('name', NUMBERS)
def test_every_number_has_a_range_and_keeps_to_it(name):
    "Just outside is refused by the setting's name; the default lies inside."
    f = FIELDS[name]
    low, high = (f.metadata[k] is not None for k in ('low', 'high'))
    assert (low or f.metadata['above'] is not None) and (high or f.metadata['below'] is not None)
    assert not outside(f.default, f.metadata)
    whole = f.type in (int, 'int')
    beyond = [
        f.metadata['low'] - 1 if low else f.metadata['above'],
        f.metadata['high'] + 1 if high else f.metadata['below'],
    ]
    for value in [*beyond, *([] if whole else [math.nan, math.inf, -math.inf])]:
        with pytest.raises(ConfigError, match=f'{name}: got .*, wanted '):
            make_config({name: value if whole else float(value)})


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(n_blocks=10**6), 'n_blocks: got 1000000, wanted at least 1 and at most 1024'),
        (dict(n_heads=0), 'n_heads: got 0'),
        (dict(seed=-1), 'seed: got -1'),
        (dict(uid_weight=math.inf), 'uid_weight: got inf'),
        (dict(dim=10, n_heads=3), 'n_heads: 3 does not divide dim 10'),
        (dict(similarity='mol', gates='query+query'), 'gates: got'),
        (dict(similarity='mol', n_query=2, n_uid=2), 'n_uid: got 2, wanted 0 to 1'),
        (dict(encoder='popularity', normalise=True), 'normalise: got true, wanted false'),
        (dict(encoder='svd', normalise=True), 'wanted false for svd'),
        (dict(row='a\x00b'), 'row: got .* all printable'),
        (dict(row='x' * 2000), 'row: got .*at most 1,000'),
        (dict(lr=True), 'lr: got True, wanted float'),
        (dict(epochs=True), 'epochs: got True, wanted int'),
        (dict(epochs='8'), "epochs: got '8', wanted int"),
        (dict(dataset=2024), 'dataset: got 2024, wanted str'),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_config(settings)


@pytest.mark.parametrize('off', ['next_time', 'use_time'])
def test_a_time_of_asking_that_is_not_read_is_refused(off):
    with pytest.raises(
        ConfigError,
        match=f"ask: got 'usual' with {off}: false, where no time of asking is read; wanted target, or {off}: true",
    ):
        make_config({'encoder': 'hstu', 'ask': 'usual', off: False})
    assert make_config({'encoder': 'hstu', off: False}).ask == 'target'


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(n_query=4), 'n_query: got 4 with similarity dot, which has no such setting; it belongs to mol'),
        (dict(dot_start=True), 'dot_start: got True with similarity dot'),
        (dict(similarity='mol', hidden=8), 'hidden: got 8 with similarity mol, .* it belongs to mlp or fm or neuralfm'),
        (dict(loss='bce', calibration=0.5), 'calibration: got 0.5 with loss bce, .* it belongs to gbce'),
        (dict(encoder='gru4rec', head_dim=8), 'head_dim: got 8 with encoder gru4rec, .* it belongs to hstu'),
    ],
)
def test_what_belongs_to_a_part_that_was_not_chosen_is_refused_with_its_owner(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_config(settings)
    whole = dataclasses.asdict(Config(**{k: v for k, v in settings.items() if k in choices}))
    assert make_config(whole) == Config(**whole), 'a record lists every setting, most of them at their defaults'


def test_the_time_of_asking_names_a_run_only_where_it_differs_and_is_read():
    assert run_id(Config(encoder='hstu', ask='usual')) != run_id(Config(encoder='hstu'))
    assert run_id(Config(ask='usual')) == run_id(Config())


def test_a_closed_form_dot_product_is_never_at_unit_length():
    for encoder in ('svd', 'popularity'):
        assert not Config(encoder=encoder).normalise and not make_config(dict(encoder=encoder)).normalise
        assert run_id(Config(encoder=encoder)) == run_id(Config(encoder=encoder, normalise=False))
    assert Config(encoder='svd', similarity='mlp').normalise, 'a learned similarity does not read it'


ODD = [
    -1,
    0,
    1,
    2,
    3,
    10**6,
    10**30,
    -(10**30),
    0.5,
    -0.5,
    1e-300,
    1e300,
    math.nan,
    math.inf,
    -math.inf,
    True,
    False,
    None,
    '',
    'mol',
    'é',
    '\n',
    '0',
    [],
    [1],
    {},
    {'a': 1},
    2**63,
    7,
    49,
    50,
    1023,
    1024,
    1025,
]


def test_a_thousand_odd_settings_are_taken_or_refused_by_name():
    "One or two odd values at a time. What is taken survives its own JSON, has a name, and is itself when read again."
    draw, taken = random.Random(0), 0
    for _ in range(1000):
        settings = {draw.choice(list(FIELDS)): draw.choice(ODD) for _ in range(draw.choice((1, 1, 2)))}
        try:
            made = make_config(settings)
        except ConfigError as e:
            assert any(str(e).startswith(f'{n}: ') for n in FIELDS) and '\n' not in str(e) and len(str(e)) < 400, (
                settings,
                str(e),
            )
            continue
        taken += 1
        again = make_config(json.loads(json.dumps(dataclasses.asdict(made))))
        assert again == made and run_id(again) == run_id(made) and canonical(canonical(made)) == canonical(made)
        assert '/' not in run_id(made) or '/' in made.dataset
    assert taken > 50


# -- identity --


def test_committed_records_keep_their_ids_and_rows_keep_their_names():
    "The golden test: a default that moves, or a new setting that is always said, renames a run."
    records = [
        json.loads(f.read_text())
        for f in sorted((ROOT / 'reports').glob('*/*/record.json'))
        if f.parent.parent.name in ('runs', 'again')
    ]
    assert len(records) > 70 and [r['id'] for r in records if run_id(make_config(r['config'])) != r['id']] == []


UNREAD = [
    n for n in FIELDS if FIELDS[n].metadata.get('of') and n not in ('encoder', 'similarity')
]  # retrieval reads both


@pytest.mark.parametrize('name', UNREAD)
def test_a_setting_that_is_not_read_renames_nothing(name):
    "For some configuration that does not read it, another value gives the same run; for some that does, another run."
    f, same, other = FIELDS[name], 0, 0
    whole = (f.metadata['low'] or 0) + 2, (f.metadata['low'] or 0) + 4
    values = choices.get(name) or {bool: (True, False), str: ('query', 'pair'), int: whole, float: (0.25, 0.5)}[f.type]
    kinds = (
        choices['encoder'],
        ('dot', 'mlp', 'mol'),
        ('bce', 'gbce', 'full-softmax'),
        ({}, dict(schedule='alternate'), dict(warm_epochs=1, tie_order='shuffled')),
    )
    for encoder, similarity, loss, more in itertools.product(*kinds):
        base = dict(encoder=encoder, similarity=similarity, loss=loss, dim=4, n_query=16, **more)
        if name in ('head_weight', 'embedder_negatives') and similarity != 'dot':
            base['head_width'] = 8 if loss == 'bce' else 0
        if loss == 'bce':
            base |= {kind: part for kind, part in f.metadata['owners'] if kind == 'protocol'}
        if name in ('uid_dropout', 'uid_weight') and similarity == 'mol':
            base['n_uid'] = 1 if loss == 'bce' else 0
        try:
            a, b = (Config(**base | {name: v}) for v in values[:2])
        except ConfigError:
            continue
        if getattr(a, name) == getattr(b, name):
            continue
        reads = f.metadata['of'](a) and f.metadata['of'](b)
        assert (config_hash(a) != config_hash(b)) == bool(f.metadata['of'](a) or f.metadata['of'](b)), (base, name)
        same, other = same + (not reads), other + bool(reads)
    assert other and same


def test_similarities_and_losses_that_differ_never_share_a_name():
    rows = [
        Config(encoder=e, similarity=s, loss=l)
        for e, s, l in itertools.product(choices['encoder'], choices['similarity'], choices['loss'])
    ]
    learned = [c for c in rows if c.encoder not in ('svd', 'popularity') or c.similarity != 'dot']
    assert len({config_hash(c) for c in learned}) == len(learned)
    assert len({run_id(Config(encoder='popularity', loss=l, lr=lr)) for l in choices['loss'] for lr in (0.1, 0.2)}) == 1


def test_own_data_go_by_content_never_by_path():
    a, b = (
        Config(dataset=p, content='ab' * 32, columns=c, items=i)
        for p, c, i in (('x/events.csv', '', ''), ('../y.parquet', 'user_id=u', 'films.csv'))
    )
    assert run_id(a) == run_id(b) and 'events' not in run_id(a) and '/' not in run_id(a)
    assert len({run_id(dataclasses.replace(a, content=c * 32)) for c in ('ab', 'cd')}) == 2


# -- files --


def deep(n):
    return 'a: ' + '[' * n + ']' * n


def laughs(n):
    return '\n'.join(['a0: &a0 [x, x, x]', *(f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 9)}]' for i in range(1, n))])


HOSTILE = {
    'aliases that unfold': laughs(12),
    'one alias': 'lr: &x 1\nepochs: *x\n',
    'deep lists': deep(20_000),
    'deep mappings': '{a: ' * 9_000,
    'unclosed': '[' * 60_000,
    'a key twice': 'lr: 1\nlr: 2\n',
    'a key twice inside': 'smoke: {a: 1, a: 2}',
    'a very long number': 'seed: ' + '9' * 60_000,
    'base sixty': 'seed: ' + ':'.join(['59'] * 9_000),
    'a date that is none': 'row: 2026-99-99',
    'a python object': 'row: !!python/object/apply:os.system ["true"]',
    'binary': 'row: !!binary "@@@"',
    'a merge': 'a: &a {b: 1}\nc: {<<: *a}',
    'two documents': 'lr: 1\n---\nlr: 2\n',
    'no mapping': '- 1\n- 2\n',
    'null bytes': 'row: a\0b',
    'a list as key': '? [a, b]\n: 1\n',
    'too long': 'row: ' + 'x' * 10**6,
    'a set': '!!set {a, b}',
    'unknown tag': 'row: !thing 1',
    'a float in hex': 'lr: 0x1p-3x',
    'directive': '%YAML 9.9\n---\nlr: 1\n',
    'colons': ': ' * 20_000,
    'question marks': '? ' * 20_000,
    'quotes': '"' * 50_001,
    'anchors': '&a ' * 10_000,
    'dashes': '- ' * 20_000,
    'tabs': '\t' * 60_000,
    'comment bomb': '#' * 65_000 + '\nlr: x',
}


@pytest.mark.parametrize('text', HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused_at_once(tmp_path, text):
    (tmp_path / 'ml-1m').mkdir()
    file = tmp_path / 'ml-1m' / 'row.yaml'
    file.write_text(text)
    began = time.monotonic()
    with pytest.raises(ConfigError) as e:
        load_config(file)
    assert (
        time.monotonic() - began < 5
        and 'row.yaml' in str(e.value)
        and '\n' not in str(e.value)
        and len(str(e.value)) < 1000
    )


def test_what_is_no_file_of_settings_is_named(tmp_path):
    with pytest.raises(ConfigError, match='cannot be read: Is a directory'):
        read_yaml(tmp_path)
    (tmp_path / 'latin.yaml').write_bytes('row: é'.encode('latin-1'))
    with pytest.raises(ConfigError, match='latin.yaml: not a page of settings'):
        read_yaml(tmp_path / 'latin.yaml')
    with pytest.raises(ConfigError, match='no such file'):
        read_row(tmp_path / 'none.yaml')


@pytest.mark.parametrize('text', ['[1', '*a', '[[[[[1]]]]]', '{a: 1, a: 2}', '9' * 5000])
def test_a_hostile_value_on_the_command_line_is_refused_by_key(text):
    with pytest.raises(ConfigError, match='epochs: cannot read the value'):
        parse_overrides([('epochs', text)])


def test_values_are_read_as_settings_need_them():
    assert parse_overrides(
        [
            ('dataset', '2024'),
            ('row', 'a: b'),
            ('lr', '1e-3'),
            ('epochs', '3'),
            ('decay', 'no'),
            ('columns', 'user_id=u'),
        ]
    ) == dict(dataset='2024', row='a: b', lr=1e-3, epochs=3, decay=False, columns='user_id=u')
    assert yaml_value('smoke: {dataset: ml-100k}\n') == dict(smoke=dict(dataset='ml-100k'))


@pytest.mark.parametrize('path', sorted((ROOT / 'nbs' / 'configs').rglob('*.yaml')), ids=lambda p: p.stem)
def test_every_file_of_settings_is_read_as_before(path):
    assert read_yaml(path) == yaml.safe_load(path.read_text())
