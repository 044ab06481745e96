"The page of the demo: its lists are those of recommend, its numbers add up, and it answers to nobody but its own page."

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest
from browser import needs_browser, open_page, overflow

from molrec import Recommender
from molrec.cli.demo_answers import make_demo
from molrec.cli.demo_server import Server, files
from molrec.search.examples import ring_frames, small, small_mol

ROOT = Path(__file__).resolve().parents[2]
RUN = 'ml-1m-leave-last-one-out-sasrec-mol-sampled-softmax-b8326fb5f596'
PLANTED = '<script>window.planted = 1</script><img src="x" onerror="window.planted = 1"> & "quotes" (1999)'
MIXTURE = small_mol | dict(n_query=4, n_item=3, n_uid=1)


def trained(folder, **said):
    "A small model of thirty films, one of which has HTML for a title."
    events, films = ring_frames()
    films.loc[0, 'title'] = PLANTED
    films['genres'] = 'Comedy|<b>Drama</b>'
    events.to_csv(folder / 'events.csv', index=False)
    films.to_csv(folder / 'films.csv', index=False)
    return Recommender.fit(folder / 'events.csv', folder / 'runs', items=folder / 'films.csv', progress=False, **said)


@contextmanager
def served(rec, k=5):
    "A recommender behind an address."
    with Server(make_demo(rec, k)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope='module')
def rec(tmp_path_factory):
    return trained(tmp_path_factory.mktemp('films'), **MIXTURE)


@pytest.fixture(scope='module')
def server(rec):
    with served(rec) as server:
        yield server


def ask(server, path, body=None, method=None, **headers):
    "Status, headers and JSON of an answer; the body may be bytes."
    line = HTTPConnection('127.0.0.1', server.port, timeout=60)
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    given = {'Content-Type': 'application/json'} if body is not None else {}
    given |= {name.replace('_', '-'): value for name, value in headers.items()}
    line.request(method or ('GET' if body is None else 'POST'), path, body, given)
    reply = line.getresponse()
    text = reply.read()
    line.close()
    return reply.status, reply.headers, json.loads(text) if text[:1] in (b'{', b'[') else text.decode()


# -- what is shown --


@pytest.mark.parametrize(
    'asked', [dict(history=['B00']), dict(history=['B03', 'B00', 'B17']), dict(user='u07'), dict(user='u42')], ids=str
)
def test_the_list_is_that_of_recommend_and_its_numbers_add_up(rec, server, asked):
    status, _, said = ask(server, '/api/list', asked)
    given = dict(users=asked.get('user'), histories=asked.get('history') and [asked['history']])
    table = rec.recommend(**given, k=5)
    assert status == 200 and [item['id'] for item in said['items']] == table.item_id.tolist()
    assert [item['rank'] for item in said['items']] == [1, 2, 3, 4, 5]
    for item, score in zip(said['items'], table.score.to_numpy()):
        logits, gates = (np.array(item[name], dtype=np.float32) for name in ('logits', 'gates'))
        assert logits.shape == gates.shape == (rec.trained.config.n_query, rec.trained.config.n_item)
        assert np.float32(item['score']) == score
        np.testing.assert_allclose((logits * gates).sum(), score, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(gates.sum(), 1, rtol=1e-5)


def test_a_published_model_is_shown_as_it_recommends():
    rec = Recommender.load(ROOT / 'reports' / 'runs' / RUN)
    demo, seen = make_demo(rec), ['matrix', 'Alien', 'blade runner (1982)']
    with Server(demo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = [ask(server, f'/api/items?typed={name.replace(" ", "%20")}')[2]['items'][0] for name in seen]
        assert [item['title'] for item in found] == ['Matrix, The (1999)', 'Alien (1979)', 'Blade Runner (1982)']
        said = ask(server, '/api/list', dict(history=[item['id'] for item in found]))[2]['items']
        server.shutdown()
    table = rec.recommend(histories=[seen], k=10)
    assert [item['title'] for item in said] == table.title.tolist()
    sums = [(np.float32(item['logits']) * np.float32(item['gates'])).sum() for item in said]
    np.testing.assert_allclose(sums, table.score, rtol=2e-6, atol=1e-5)
    assert np.shape(said[0]['gates']) == (8, 4)


def test_eight_who_ask_at_once_get_what_each_asked_for(rec):
    "The first of them read the data of the users too."
    fresh = Recommender(rec.trained, rec.data)
    asked = [dict(history=[f'B{i:02}', f'B{i + 1:02}']) for i in range(12)] + [dict(user=f'u{i:02}') for i in range(12)]
    alone = [rec.recommend(a.get('user'), a.get('history') and [a['history']], 5).item_id.tolist() for a in asked]
    with served(fresh) as server, ThreadPoolExecutor(8) as threads:
        said = list(threads.map(lambda a: ask(server, '/api/list', a)[2]['items'], asked))
    assert [[item['id'] for item in items] for items in said] == alone


def test_a_user_is_shown_with_what_they_did(server):
    status, _, said = ask(server, '/api/user?id=u07')
    events = ring_frames()[0]
    assert status == 200 and [i['id'] for i in said['history']] == events[events.user_id == 'u07'].item_id.tolist()
    assert ask(server, '/api/user')[2]['id'] in set(events.user_id)
    assert 'u99: not among the 60 users' in ask(server, '/api/user?id=u99')[2]['error']


# -- what is refused --


@pytest.mark.parametrize(
    'body, said',
    [
        (b'{', 'got no JSON'),
        (b'\xff\xfe', 'got no JSON'),
        (b'null', 'got a NoneType, wanted {"history": [ids]} or {"user": id}'),
        (dict(history=['B00'], user='u01'), "the keys ['history', 'user']"),
        (dict(history='B00'), 'wanted a list of item ids'),
        (dict(history=[[]]), 'each as text'),
        (dict(history=[]), 'at least one'),
        (dict(history=['B00', 'B77']), "got 'B77', wanted ids among the 30 items of this run"),
        (dict(history=['B00'] * 10_001), 'got 10,001 items, wanted at most 10,000'),
        (dict(user=7), 'user: got a int, wanted an id as text'),
        (dict(user='nobody'), 'user nobody: not among the 60 users'),
    ],
)
def test_what_cannot_be_meant_is_said_in_a_sentence(server, body, said):
    status, _, answer = ask(server, '/api/list', body)
    assert status == 400 and said in answer['error']


@pytest.mark.parametrize(
    'status, path, asked',
    [
        (403, '/', dict(Host='evil.example')),
        (403, '/api/about', dict(Host='127.0.0.1')),
        (403, '/api/list', dict(body=dict(user='u07'), Origin='http://evil.example')),
        (403, '/api/list', dict(body=dict(user='u07'), Origin='null')),
        (404, '/../settings.ini', {}),
        (404, '/demo.py', {}),
        (405, '/api/list', {}),
        (405, '/api/about', dict(body={})),
        (411, '/api/list', dict(body=b'{}', Content_Length='-2')),
        (413, '/api/list', dict(body=b'{}', Content_Length='2000000')),
        (415, '/api/list', dict(body=dict(user='u07'), Content_Type='text/plain')),
        (501, '/', dict(method='OPTIONS', Origin='http://evil.example', Access_Control_Request_Method='POST')),
        (501, '/api/list', dict(method='PUT', body=b'{}')),
    ],
)
def test_a_request_of_others_is_refused_and_opens_nothing(server, status, path, asked):
    got, headers, said = ask(server, path, **asked)
    assert got == status and list(said) == ['error']
    assert [name for name in headers if name.lower().startswith('access-control')] == []
    assert headers['Content-Security-Policy'].startswith("default-src 'self'")


def test_it_listens_on_this_machine_alone(server):
    assert server.socket.getsockname()[0] == '127.0.0.1'
    line = socket.create_connection(('127.0.0.1', server.port), timeout=10)
    line.sendall(b'GET / HTTP/1.1\r\nHost: localhost:%d\r\nHost: evil.example\r\n\r\n' % server.port)
    assert line.recv(100).startswith(b'HTTP/1.1 403')
    line.close()


def test_its_own_name_is_answered_with_a_policy_and_no_title_in_the_page(server):
    for path in files:
        status, headers, text = ask(server, path, Host=f'localhost:{server.port}')
        assert status == 200 and 'planted' not in text and headers['X-Content-Type-Options'] == 'nosniff'
        assert "default-src 'self'" in headers['Content-Security-Policy'] and 'unsafe' not in headers.as_string()


def test_ctrl_c_ends_it(rec):
    words = [sys.executable, '-u', '-m', 'molrec', 'demo', str(rec.trained.folder), '--no-browser']
    env = os.environ | dict(PYTHONPATH=str(ROOT))
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # whoever started the tests may have it ignored
    with subprocess.Popen(words, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, preexec_fn=heard) as command:
        address = next(m[1] for line in command.stdout if (m := re.match(r'http://127\.0\.0\.1:(\d+)/', line)))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(('127.0.0.2', int(address)), timeout=10)
        command.send_signal(signal.SIGINT)
        assert command.stdout.read() == '\nended\n' and command.wait(10) == 0


# -- in a browser --


def type_title(page, typed):
    "As fingers do: letters, then Enter on what is offered."
    page.fill('#typed', typed)
    page.wait_for_selector('#found li')
    page.press('#typed', 'Enter')


def settled(page, n):
    "Wait until the list follows a history of `n` items."
    page.wait_for_selector(f'#history:has(> :nth-child({n}):last-child)')
    page.wait_for_selector('#list[aria-busy=false] .picture')


def picture(page):
    "Logits, weights and the score that the open result shows."
    cells = page.eval_on_selector_all('.picture .cell', 'cells => cells.map(c => [+c.dataset.logit, +c.dataset.gate])')
    return np.array(cells), float(page.inner_text('.result[aria-expanded=true] .score').replace('−', '-'))


CONTRAST = """() => {
    const paint = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const rgba = colour => { paint.clearRect(0, 0, 1, 1); paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1);
        return [...paint.getImageData(0, 0, 1, 1).data]; };
    const light = colour => { const [r, g, b] = colour.slice(0, 3).map(v => v / 255)
        .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b; };
    const behind = e => { for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor);
        if (c[3]) return c; } };
    const seen = [];
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) { const e = walk.currentNode.parentElement;
        if (!walk.currentNode.data.trim() || !e.getClientRects().length || e.matches(':disabled')) continue;
        seen.push([rgba(getComputedStyle(e).color), behind(e), walk.currentNode.data.slice(0, 40)]); }
    for (const e of document.querySelectorAll('input')) seen.push(
        [rgba(getComputedStyle(e, '::placeholder').color), behind(e), e.placeholder]);
    return seen.map(([ink, paper, text]) => { const [a, b] = [light(ink), light(paper)].sort((x, y) => y - x);
        return [(a + .05) / (b + .05), text]; });
}"""


@needs_browser
def test_a_history_is_clicked_together_and_a_result_taken_apart(rec, server):
    with open_page(server.address) as page:
        asked = []
        page.on('request', lambda request: asked.append(request.url))
        page.click('#popular button >> nth=0')
        settled(page, 1)
        type_title(page, '<script>window')
        settled(page, 2)
        assert page.inner_text('#history li >> nth=1').startswith(PLANTED)
        titles = page.eval_on_selector_all('#list .title', 'all => all.map(e => e.firstChild.data)')
        history = page.eval_on_selector_all('#history .title', 'all => all.map(e => e.firstChild.data)')
        assert titles == rec.recommend(histories=[history], k=5).title.tolist()
        page.click('#list button >> nth=2')
        assert page.get_attribute('#list button >> nth=2', 'aria-expanded') == 'true'
        cells, score = picture(page)
        assert (
            len(cells) == rec.trained.config.n_query * rec.trained.config.n_item
            and page.locator('.picture').count() == 1
        )
        assert abs(cells.prod(1).sum() - score) < 6e-4 and abs(cells[:, 1].sum() - 1) < 1e-5
        page.hover('.cell >> nth=1')
        assert page.inner_text('.readout dd >> nth=0') == f'{cells[1, 0]:.3f}'.replace('-', '−')
        assert page.inner_text('.readout dd >> nth=1') == f'{cells[1, 1]:.4f}'
        assert page.evaluate('window.planted') is None and page.locator('main script, main img').count() == 0
        assert page.errors == [] and {url[: len(server.address)] for url in asked} == {server.address}


@needs_browser
def test_a_history_is_changed(server):
    with open_page(server.address) as page:
        shown = lambda: page.eval_on_selector_all('#history .title', 'all => all.map(e => e.firstChild.data)')
        for n, typed in enumerate(('B03', 'B05', 'B07')):
            type_title(page, typed)
            settled(page, n + 1)
        before = shown()
        page.click('#history li >> nth=2 >> [title=Earlier]')
        assert shown() == [before[0], before[2], before[1]]
        assert page.evaluate("document.activeElement.closest('li').dataset.place") == '1'
        page.click('#history li >> nth=0 >> [title=Remove]')
        assert shown() == [before[2], before[1]]
        page.click('#clear')
        page.wait_for_selector('#list[aria-busy=false]:not(:has(li))', state='attached')
        assert shown() == [] and page.is_visible('#popular')
        page.fill('#user', 'u07')
        page.press('#user', 'Enter')
        page.wait_for_selector('.picture')
        assert page.inner_text('#asked-title') == 'History of user u07' and page.locator('#history li').count() == 8
        page.click('#earlier')
        assert page.locator('#history li').count() == 14 and page.errors == []


@needs_browser
def test_it_can_be_used_by_keys_alone(server):
    with open_page(server.address) as page:
        press = page.keyboard.press
        focus = lambda what: page.evaluate('what => document.activeElement.matches(what)', what)
        tab_to = lambda what: next(True for _ in range(60) if press('Tab') or focus(what))
        page.wait_for_selector('#popular button')
        tab_to('#typed')
        page.keyboard.type('b')
        page.wait_for_selector('#found li')
        second = page.inner_text('#found li >> nth=1')
        press('ArrowDown'), press('Enter')
        settled(page, 1)
        assert page.inner_text('#history .title') == second and focus('#typed')
        tab_to('button.result[aria-expanded=false]')
        press('Enter')
        assert focus('button.result[aria-expanded=true]')
        press('Tab')
        assert focus('.cell.near')
        press('ArrowUp'), press('ArrowUp'), press('ArrowUp'), press('ArrowLeft'), press('ArrowLeft'), press('ArrowLeft')
        assert focus('.cell[aria-label^="q1·x1"]') and page.inner_text('.readout b').startswith('q1·x1 adds')
        press('ArrowRight')
        assert focus('.cell[aria-label^="q1·x2"]') and page.locator('.cell[tabindex="0"]').count() == 1
        assert page.errors == []


@needs_browser
@pytest.mark.parametrize('width', [420, 1280])
@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
def test_it_fits_and_can_be_read(server, width, dark):
    with open_page(server.address, width, dark=dark) as page:
        type_title(page, '<script>window')
        settled(page, 1)
        assert overflow(page) == [] and page.evaluate('document.documentElement.scrollWidth') <= width
        assert [(round(ratio, 2), text) for ratio, text in page.evaluate(CONTRAST) if ratio < 4.5] == []
        assert page.evaluate("getComputedStyle(document.querySelector('.cell')).backgroundColor") != 'rgba(0, 0, 0, 0)'


@needs_browser
def test_what_is_refused_is_read_on_the_page(server):
    with open_page(server.address) as page:
        page.fill('#user', 'nobody')
        page.press('#user', 'Enter')
        page.wait_for_selector('#said:has-text("not among the 60 users")')
        assert all('400' in error for error in page.errors)


@needs_browser
def test_a_dot_product_shows_its_list_alone(tmp_path):
    rec = trained(tmp_path, **small)
    with served(rec) as server, open_page(server.address) as page:
        page.click('#popular button >> nth=0')
        page.wait_for_selector('#list li')
        assert 'dot product' in page.inner_text('#idea') and 'The list stands alone' in page.inner_text('#idea')
        assert page.locator('#list li').count() == 5 and page.locator('#list button, .glyph').count() == 0
        assert page.errors == []
