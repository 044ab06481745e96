"What a reader meets on a page of results: at a desk, on a telephone, by night, with the keyboard."

from pathlib import Path

import pandas as pd
import pytest
from browser import needs_browser, open_page, overflow

from molrec.bench import kernels
from molrec.report import build, insights
from molrec.report.examples import make_rows, make_run
from molrec.report.frame import framed, html_of, part
from molrec.report.markup import Markup
from molrec.report.tables import set_table

pytestmark = needs_browser
ROOT = Path(__file__).resolve().parents[2]
CODE = '```sh\nmolrec run nbs/configs/ml-1m/sasrec-mol-bce.yaml -p epochs 2 -p seed 3 -p batch_size 128\n```\n'

ODD = pd.DataFrame(
    {
        'row': [f'row {i}' for i in (10, 2, 1, 3, 4, 5, 6, 7)],
        'difference': ['−0.012', '+0.003', '–', '0', '−1.5', '+12', '.004', '1,024'],
        'ours': [f'.{d} [.1, .9]' for d in (337, 2, 29, 301, 4, 10, 5, 99)],
        'p': ['<.001', '.001', '.050', '.9', '.2', '1', '.0004', '–'],
        'time': ['40 s', '25 min', '3 ms', '2 h', '90 µs', '61 s', '–', '1 min'],
        'verdict': ['reached', 'above', 'within noise', 'above', '–', 'reached', 'above', 'not reproduced'],
    }
)


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    "A report of made-up records: judged rows, rows beside nothing published, a figure and a table of others."
    folder = tmp_path_factory.mktemp('page')
    runs = make_rows(folder / 'runs', but=('SVD, NeuralFM + BCE',))
    beauty = dict(loss='sampled-softmax', users=90, dataset='amazon-beauty', protocol='leave-last-one-out')
    make_run(runs, 'SASRec, MoL + head', **beauty)
    make_run(runs, 'Popularity', 'popularity', 'dot', **beauty)
    _, more = insights.build_insights(runs, folder)
    more += part('Commands', 'commands', html_of(CODE))
    return build.build_report(runs, folder, more=more)['html'].as_uri()


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    "A page with one table in sight and one that is folded."
    body = part('Odd numbers', 'odd', set_table(ODD, 'table', title='Odd'), folded=False)
    body += part('Behind', 'behind', Markup('<p id="deep">a sentence</p>'), 'said')
    file = tmp_path_factory.mktemp('small') / 'page.html'
    file.write_text(framed('small', Markup('<nav><a href="#deep">to it</a></nav>') + body))
    return file.as_uri()


unfold = "() => document.querySelectorAll('details').forEach(fold => { fold.open = true; })"


@pytest.mark.parametrize('width', [420, 1280])
def test_nothing_reaches_beyond_the_page_and_nothing_is_reported(results, width):
    with open_page(results, width) as page:
        page.evaluate(unfold)
        assert overflow(page) == []
        assert page.evaluate('document.documentElement.scrollWidth') <= width
        assert page.locator('svg:visible').count() == page.locator('figure').count() >= 3
        assert page.errors == []


@pytest.mark.parametrize('name', ['results.html', 'kernels.html'])
def test_the_committed_pages_can_be_read_on_a_telephone(name):
    file = ROOT / 'reports' / name
    assert file.stat().st_size < 1_500_000
    with open_page(file.as_uri(), 420) as page:
        page.evaluate(unfold)
        assert overflow(page) == page.errors == []
        assert page.evaluate('document.documentElement.scrollWidth') <= 420
    with open_page(file.as_uri(), dark=True) as page:
        assert page.evaluate('document.documentElement.scrollHeight') <= 10 * 800
        page.evaluate(unfold)
        assert page.evaluate(CONTRAST) == page.errors == []


def test_the_main_part_is_ten_screens_at_most_and_the_rule_stands_by_the_verdicts(results):
    with open_page(results) as page:
        assert page.evaluate('document.documentElement.scrollHeight') <= 10 * 800
        for at in ('.rule', 'caption'):
            assert page.locator(f'section.part {at}').first.is_visible()
        rule, table = (page.locator(f'section.part {at}').first.bounding_box() for at in ('.rule', 'table'))
        assert 0 < table['y'] - rule['y'] < 200


CONTRAST = """() => {
    const channel = c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const light = c => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
    const rgba = text => (text.match(/[\\d.]+/g) || []).map(Number);
    const under = e => {
        for (; e; e = e.parentElement) {
            const c = rgba(getComputedStyle(e).backgroundColor);
            if (c.length === 3 || c[3] > 0) return c;
        }
        return [255, 255, 255];
    };
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
    for (let n; n = walk.nextNode();) {
        const e = n.parentElement, look = getComputedStyle(e);
        if (!n.textContent.trim() || e.closest('script') || !e.getClientRects().length) continue;
        const [a, b] = [light(rgba(e.closest('svg') ? look.fill : look.color)), light(under(e))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) found.push([n.textContent.trim().slice(0, 40), Math.round(ratio * 100) / 100]);
    }
    return found;
}"""


@pytest.mark.parametrize('dark', [False, True])
def test_every_word_can_be_read_by_day_and_by_night(results, dark):
    with open_page(results, dark=dark) as page:
        page.evaluate(unfold)
        assert page.evaluate(CONTRAST) == []
        shade = page.evaluate('getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]')
        assert (shade < 64) is dark


def test_the_measure_of_contrast_finds_what_cannot_be_read(tmp_path):
    (tmp_path / 'page.html').write_text(framed('x', Markup('<p style="color: #888">faint</p><p>black</p>')))
    with open_page((tmp_path / 'page.html').as_uri()) as page:
        assert page.evaluate(CONTRAST) == [['faint', 3.54]]


def test_contents_lead_to_every_part_and_open_it(results):
    with open_page(results) as page:
        links = page.locator('nav a')
        assert links.count() == page.locator('h2').count() >= 5
        for i in range(links.count()):
            links.nth(i).click()
            name = links.nth(i).get_attribute('href')[1:]
            head = page.locator(f'[id="{name}"]')
            assert head.inner_text() == links.nth(i).inner_text() and head.is_visible()
            assert head.evaluate("e => !e.closest('details') || e.closest('details').open")
        inside = page.locator('a[href^="#"]').evaluate_all('all => all.map(a => a.getAttribute("href").slice(1))')
        assert all(page.evaluate('name => !!document.getElementById(name)', name) for name in inside)


def test_a_link_into_a_fold_opens_it_however_it_is_followed(small):
    with open_page(small + '#deep') as page:
        assert page.locator('#deep').is_visible()
        page.locator('details').evaluate('fold => { fold.open = false; }')
        page.locator('nav a').click()
        assert page.locator('#deep').is_visible()


def column(page, name):
    at = list(ODD).index(name) + 1
    return page.locator(f'tbody tr > :nth-child({at})').all_inner_texts()


SORTED = {
    'difference': ['1,024', '+12', '.004', '+0.003', '0', '−0.012', '−1.5', '–'],
    'ours': [f'.{d} [.1, .9]' for d in (99, 5, 4, 337, 301, 29, 2, 10)],
    'p': ['1', '.9', '.2', '.050', '.001', '<.001', '.0004', '–'],
    'time': ['2 h', '25 min', '61 s', '1 min', '40 s', '3 ms', '90 µs', '–'],
    'verdict': ['above', 'above', 'above', 'not reproduced', 'reached', 'reached', 'within noise', '–'],
    'row': [f'row {i}' for i in (1, 2, 3, 4, 5, 6, 7, 10)],
}


def test_a_head_sorts_by_what_its_cells_mean(small):
    with open_page(small) as page:
        for name, wanted in SORTED.items():
            printed = column(page, name)
            head = page.locator('th', has=page.get_by_role('button', name=name, exact=True))
            head.locator('button').press('Enter')
            assert column(page, name) == wanted
            assert head.get_attribute('aria-sort') == ('ascending' if name in ('row', 'verdict') else 'descending')
            assert page.locator('[aria-sort]:not([aria-sort=none])').count() == 1
            head.locator('button').click()
            back, empty = column(page, name), wanted.count('–')
            assert back[0] == wanted[-1 - empty] and back[len(back) - empty :] == ['–'] * empty
            head.locator('button').click()
            assert column(page, name) == printed and head.get_attribute('aria-sort') == 'none'


def test_a_filter_keeps_the_rows_that_hold_every_word(small):
    with open_page(small) as page:
        field = page.get_by_role('searchbox', name='Filter the rows of Odd')
        field.fill('above -1')
        assert page.locator('tbody tr:visible').count() == 0
        field.fill('Above 2')
        assert page.locator('tbody tr:visible th').all_inner_texts() == ['row 2', 'row 3']
        assert page.locator('[role=status]').inner_text() == '2 of 8 rows'
        field.fill('')
        assert page.locator('tbody tr:visible').count() == 8


def test_tables_can_be_heard(results):
    with open_page(results) as page:
        tables = page.locator('table')
        assert tables.count() > 10
        assert page.locator('table:not(:has(caption))').count() == 0
        assert page.locator('thead th:not([scope=col]), tbody th:not([scope=row])').count() == 0
        assert page.locator('table:not(:has(tbody th))').count() == 0
        assert page.locator('.wide:not([aria-label])').count() == 0


def test_on_paper_everything_is_unfolded_and_nothing_can_be_pressed(small):
    with open_page(small) as page:
        page.emulate_media(media='print')
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.locator('#deep').is_visible() and not page.locator('.filter').is_visible()
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.locator('details[open]').count() == 0


def test_a_script_from_data_would_not_run(tmp_path):
    body = Markup('<p>here</p><script>document.title = "ran"</script><img src="x.png" onerror="document.title = 1">')
    (tmp_path / 'page.html').write_text(framed('quiet', body))
    with open_page((tmp_path / 'page.html').as_uri()) as page:
        assert page.title() == 'quiet' and len(page.errors) >= 2


@pytest.mark.parametrize('dark', [False, True])
def test_the_page_of_kernels_has_the_same_frame(tmp_path, dark):
    tables = {name: (ODD, 'words') for name in ('Whole searches', 'What a GPU said', 'Bounds')}
    (tmp_path / 'kernels.html').write_text(kernels.kernels_html(tables, 'lead'))
    with open_page((tmp_path / 'kernels.html').as_uri(), 420, dark=dark) as page:
        page.locator('nav a').last.click()
        assert page.locator('table:visible').count() == 3
        assert overflow(page) == page.errors == page.evaluate(CONTRAST) == []
