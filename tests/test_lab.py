"The notebooks as JupyterLab serves and runs them: it knows no nbdev, and reaches nothing above its root."

import json
import os
import posixpath
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
from browser import needs_browser, open_page
from test_links import is_ours, links

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(p for p in ROOT.glob('nbs/**/*.ipynb') if '.ipynb_checkpoints' not in p.parts)
QUICK = ['00_base/03_files', '05_settings/01_config', '20_metrics/02_from_ranks']
SLOW = [
    '10_data/05_catalogue',
    '50_training/06_loop',
    '80_report/02_plots',
    '80_report/11_build',
    'experiments/results',
]
slow = pytest.mark.skipif(not os.environ.get('MOLREC_SLOW'), reason='takes a minute; MOLREC_SLOW=1 runs it')


def code(page):
    return [''.join(c['source']) for c in json.loads(page.read_text())['cells'] if c['cell_type'] == 'code']


def test_no_page_exports_when_all_its_cells_are_run():
    "`nbdev_export` is a command; JupyterLab runs a cell whatever directives stand above it."
    assert [p.relative_to(ROOT).as_posix() for p in PAGES if any('nbdev_export' in s for s in code(p))] == []


# Run All

run_all = """
import io, sys, matplotlib
from IPython.core.interactiveshell import InteractiveShell
matplotlib.use('agg')
shell = InteractiveShell.instance()
for cell in __import__('json').load(open(sys.argv[1]))['cells']:
    if cell['cell_type'] == 'code':
        shell.run_cell(''.join(cell['source'])).raise_error()
"""


def files(folder):
    "What lies in a checkout: when it was changed, and how long it is. Python's own caches do not count, nor does work/."
    there = (f for f in folder.rglob('*') if f.is_file() and not {'__pycache__', '.git', 'work'} & {*f.parts})
    return {f.relative_to(folder).as_posix(): (f.stat().st_mtime_ns, f.stat().st_size) for f in there}


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "A checkout of one's own, with what is not committed yet."
    folder = tmp_path_factory.mktemp('lab') / 'checkout'
    listed = ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard']
    for name in filter(None, subprocess.check_output(listed, cwd=ROOT, text=True).split('\0')):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


@pytest.mark.parametrize('page', [*QUICK, *(pytest.param(p, marks=slow) for p in SLOW)])
def test_run_all_leaves_the_checkout_as_it_was(copy, page, tmp_path):
    file, before = copy / 'nbs' / f'{page}.ipynb', files(copy)
    env = os.environ | dict(PYTHONPATH=str(copy), PYTHONDONTWRITEBYTECODE='1', IPYTHONDIR=str(tmp_path))
    env.pop('IN_TEST', None)
    done = subprocess.run(
        [sys.executable, '-c', run_all, file], cwd=file.parent, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    after = files(copy)
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} == set()


# the served lab


def lab_command():
    "What `make lab` types, without its folder and its recipe's @."
    line = re.search(r'^lab:.*\n\t@\$\(BIN\)/jupyter (lab.*)$', (ROOT / 'Makefile').read_text(), re.M)[1]
    return shlex.split(line)


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "A JupyterLab as `make lab` starts it, on a free port: its address, and a way to ask it."
    home, token = tmp_path_factory.mktemp('home'), 'a-token-of-the-test'
    places = {f'JUPYTER_{kind}_DIR': str(home / kind) for kind in ('CONFIG', 'DATA', 'RUNTIME')}
    env = os.environ | places | dict(JUPYTERLAB_WORKSPACES_DIR=str(home), JUPYTERLAB_SETTINGS_DIR=str(home))
    own = ['--no-browser', '--port=0', '--allow-root', f'--IdentityProvider.token={token}']
    with subprocess.Popen(
        [sys.executable, '-m', 'jupyter', *lab_command(), *own], cwd=ROOT, env=env, stderr=subprocess.DEVNULL
    ) as server:
        try:
            yield started(home / 'RUNTIME', server, token)
        finally:
            server.terminate()


def started(folder, server, token):
    "The address of a server that answers."
    for _ in range(600):
        for file in folder.glob('jpserver-*.json'):
            lab = json.loads(file.read_text() or '{}').get('url'), token
            if lab[0] and answer(lab, 'api')[0] == 200:
                return lab
        assert server.poll() is None, 'JupyterLab ended before it answered'
        time.sleep(0.1)
    raise TimeoutError('JupyterLab did not answer within a minute')


def answer(lab, path):
    "Status and address that the server gives for a path below its root; (0, ''): it does not answer."
    url, token = lab
    request = urllib.request.Request(url + path, headers={'Authorization': f'token {token}'})
    try:
        with urllib.request.urlopen(request, timeout=30) as found:
            return found.status, found.url
    except urllib.error.HTTPError as e:
        return e.code, e.url
    except urllib.error.URLError:
        return 0, ''


def within(page, link):
    "The path that JupyterLab asks for; it begins with .. where the link leads above the root."
    path = unquote(link.partition('#')[0])
    here = page.relative_to(ROOT).parent.as_posix()
    return posixpath.normpath(posixpath.join(here, path)) if path else page.relative_to(ROOT).as_posix()


def targets(pages):
    return sorted({within(p, link) for p in pages for link in links(p) if is_ours(link)})


def test_the_lab_opens_on_the_index(lab):
    status, url = answer(lab, '')
    assert status == 200 and url.endswith('/lab/tree/nbs/index.ipynb')


def test_what_the_front_pages_link_to_is_served(lab):
    rooms = [p for p in PAGES if re.fullmatch(r'0?0_.*', p.name)]
    wanted = targets([ROOT / 'nbs' / 'index.ipynb', *rooms])
    assert len(wanted) > 150 and not [path for path in wanted if path.startswith('..')]
    served = {path: answer(lab, f'api/contents/{quote(path)}?content=0')[0] for path in wanted}
    assert {path: status for path, status in served.items() if status != 200} == {}


def test_no_page_links_above_the_root_of_the_lab():
    assert [path for path in targets(PAGES) if path.startswith('..')] == []


def test_figures_of_the_index_are_served_as_they_are(lab):
    figures = [path for path in targets([ROOT / 'nbs' / 'index.ipynb']) if path.endswith(('.png', '.svg'))]
    assert len(figures) >= 3
    assert {path: answer(lab, f'files/{quote(path)}')[0] for path in figures} == dict.fromkeys(figures, 200)
    assert answer(lab, 'files/nbs/no-figure.png')[0] == 404


@slow
@needs_browser
def test_the_index_shows_its_figures_in_the_lab(lab):
    url, token = lab
    with open_page(f'{url}lab/tree/nbs/index.ipynb?token={token}', height=1600) as page:
        page.set_default_timeout(60_000)
        page.locator('.jp-Notebook .jp-RenderedHTMLCommon h1').first.wait_for()
        seen = {}
        for _ in range(40):
            page.mouse.move(640, 800)
            page.mouse.wheel(0, 700)
            page.wait_for_timeout(400)
            for source, width in page.evaluate(
                "[...document.querySelectorAll('.jp-Notebook img')].map(i => [i.src.slice(-60), i.naturalWidth])"
            ):
                seen[source] = max(width, seen.get(source, 0))
        assert len(seen) >= 3 and all(seen.values())
