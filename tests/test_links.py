"Every link inside the project leads to a file that is there, and every anchor to a heading."

import json
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[1]
CODE = re.compile(r'^(`{3,}|~{3,}).*?^\1[`~]*\s*$|(`+)(?!`).*?(?<!`)\2(?!`)', re.S | re.M)  # blocks and spans of it
LINK = re.compile(r'(?<!\\)\]\(\s*<?([^\s)>]+)>?(?:\s+"[^"]*")?\s*\)|^\[[^\]]+\]:\s*(\S+)', re.M)
HEADING = re.compile(r'^#{1,6}\s+(.+?)\s*#*\s*$', re.M)


class Addresses(HTMLParser):
    "What the tags of a text link to, and the names that it gives."

    def __init__(self, text):
        super().__init__()
        self.links, self.names = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.links += [value for key, value in attrs if key in ('href', 'src', 'xlink:href') and value]
        self.names += [value for key, value in attrs if key in ('id', 'name') and value]


@cache
def texts(page):
    "The Markdown of a page, and its HTML: a notebook has both, in cells and in outputs."
    content = page.read_text(encoding='utf-8')
    if page.suffix == '.html':
        return [], [content]
    if page.suffix == '.md':
        return [content], [content]
    cells = json.loads(content)['cells']
    said = [''.join(c['source']) for c in cells if c['cell_type'] == 'markdown']
    outputs = [o['data'] for c in cells for o in c.get('outputs', []) if 'data' in o]
    shown = [''.join(o['text/markdown']) for o in outputs if 'text/markdown' in o]
    return said + shown, said + shown + [''.join(o['text/html']) for o in outputs if 'text/html' in o]


def without_code(text):
    return CODE.sub('', text)


@cache
def links(page):
    "All that a page links to."
    markdown, html = texts(page)
    found = [a or b for text in markdown for a, b in LINK.findall(without_code(text))]
    if page.suffix == '.html':
        return found + [a for text in html for a in Addresses(text).links]
    return found + [a for text in html for a in Addresses(without_code(text)).links]


def anchor(heading):
    "A heading as Jupyter and GitHub link to it; theirs differ in case, and in signs that neither keeps."
    plain = re.sub(r'\[([^\]]*)\]\([^)]*\)|[`*_]', r'\1', heading)
    return re.sub(r'[^\w\- ]', '', plain.lower()).strip().replace(' ', '-')


@cache
def anchors(page):
    "All that a link may name on a page."
    markdown, html = texts(page)
    headings = {
        anchor(h)
        for text in markdown
        for h in HEADING.findall(CODE.sub(lambda m: m[0] if '\n' not in m[0] else '', text))
    }
    return headings | {name for text in html for name in Addresses(text).names}


def is_ours(link):
    return not re.match(r'[A-Za-z][A-Za-z+.-]*:|//', link)


def wrong(page, link):
    "Why a link leads nowhere; '': it leads somewhere."
    path, _, name = link.partition('#')
    target = (page.parent / unquote(path)).resolve() if path else page
    if not target.exists():
        return 'no such file'
    if not name or target.suffix not in ('.ipynb', '.md', '.html'):
        return ''
    known = anchors(target)
    return '' if unquote(name) in known or anchor(unquote(name).replace('-', ' ')) in known else 'no such heading'


def pages():
    "All pages: the notebooks, what stands at the top, and the report."
    found = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *ROOT.glob('nbs/**/*.ipynb')]
    found += [p for kind in ('md', 'html', 'ipynb') for p in ROOT.glob(f'reports/**/*.{kind}')]
    return sorted(p for p in found if not any(part.startswith('.') for part in p.relative_to(ROOT).parts))


def broken(page):
    return [f'{link}: {why}' for link in dict.fromkeys(links(page)) if is_ours(link) and (why := wrong(page, link))]


@pytest.mark.parametrize('page', pages(), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    assert broken(page) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    page, other = tmp_path / 'page.md', tmp_path / 'other.md'
    other.write_text('# A `name` with *signs*, and more\n\n```sh\n# no heading\n```\n')
    lines = [
        '[1](other.md)',
        '[2](other.md#A-name-with-signs,-and-more)',
        '[3](other.md#no-heading)',
        '[4](nowhere.md)',
        '![5](nowhere.png)',
        '`[6](nowhere.md)`',
        '[7](https://example.org/nowhere)',
        '<a href="nowhere.html">8</a>',
        '[9](#below)',
        '## Below',
    ]
    page.write_text('\n\n'.join(lines))
    assert broken(page) == [
        'other.md#no-heading: no such heading',
        'nowhere.md: no such file',
        'nowhere.png: no such file',
        'nowhere.html: no such file',
    ]


def test_a_notebook_is_read_with_its_outputs(tmp_path):
    page = tmp_path / 'page.ipynb'
    outputs = [dict(data={'text/markdown': ['[a](no', 'where.md)']}), dict(data={'text/html': '<img src="no.png">'})]
    cells = [
        dict(cell_type='markdown', source=['## A head', 'ing\n', '[b](#A-heading) [c](#Another)']),
        dict(cell_type='code', source='[d](nowhere)', outputs=outputs),
    ]
    page.write_text(json.dumps(dict(cells=cells)))
    assert broken(page) == ['#Another: no such heading', 'nowhere.md: no such file', 'no.png: no such file']
