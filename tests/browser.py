"A browser that is there already, without a screen: what pages look like and do is tested in it."

import os
import shutil
from contextlib import contextmanager

import pytest

FOUND = os.environ.get('MOLREC_CHROMIUM') or shutil.which('chromium') or shutil.which('chromium-browser')
FLAGS = [
    '--no-sandbox',
    '--disable-gpu',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
]
needs_browser = pytest.mark.skipif(not FOUND, reason='no chromium on this machine; MOLREC_CHROMIUM may name one')


@contextmanager
def open_page(address, width=1280, height=800, dark=False):
    "A page of the browser at an address (file: or http:), with `page.errors`, what its console and network said was wrong."
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=FOUND, args=FLAGS)
        page = browser.new_page(viewport=dict(width=width, height=height), color_scheme='dark' if dark else 'light')
        page.errors = []
        page.on('console', lambda m: page.errors.append(m.text) if m.type in ('error', 'warning') else None)
        page.on('pageerror', lambda error: page.errors.append(str(error)))
        page.on('requestfailed', lambda request: page.errors.append(f'{request.url}: {request.failure}'))
        page.set_default_timeout(5_000)
        page.goto(address)
        yield page
        browser.close()


def overflow(page) -> list[str]:
    "Elements that reach beyond the right edge of the page, without a scrolling box of their own around them."
    return page.evaluate("""() => [...document.querySelectorAll('body *')].filter(e => {
        if (e.getBoundingClientRect().right <= innerWidth + 1 || !e.getClientRects().length) return false;
        for (let p = e; p && p !== document.body; p = p.parentElement)
            if (['auto', 'scroll', 'hidden', 'clip'].includes(getComputedStyle(p).overflowX)) return false;
        return true;
    }).map(e => e.outerHTML.slice(0, 120))""")
