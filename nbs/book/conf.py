"Sphinx's settings for the book. `make book` stages the notebooks (stage.py), puts this file beside them and builds."

import shutil
from importlib.metadata import files
from pathlib import Path

project, author, language = 'molrec', 'The molrec authors', 'en'
copyright = '2026, the molrec authors'
extensions = ['myst_nb']
nb_execution_mode = 'off'
nb_mime_priority_overrides = [
    ('html', 'text/markdown', 0),
    ('html', 'text/html', 5),
    ('html', 'image/svg+xml', 10),
    ('html', 'image/png', 20),
]
nb_render_markdown_format = 'myst'
myst_enable_extensions = ['dollarmath', 'amsmath']
myst_dmath_double_inline = True
myst_heading_anchors = 6
suppress_warnings = ['myst.header']  # pages may start a section two levels down

html_theme = 'sphinx_book_theme'
html_title = 'molrec'
html_static_path = ['_static']
html_css_files = ['book.css']
html_theme_options = dict(
    repository_url='https://github.com/molrec/molrec',
    use_repository_button=True,
    use_download_button=False,
    navbar_persistent=[],
    navbar_start=[],
    navbar_center=[],
    navbar_end=[],
    show_navbar_depth=1,
    home_page_in_toc=True,
    collapse_navigation=True,
)
html_copy_source = False

# MathJax comes with the book: one file, formulas as SVG, so that no font has to be fetched either
mathjax_path = 'tex-svg-full.js'
mathjax3_config = dict(options=dict(enableMenu=False))


shipped = next(f for f in files('sphinx-mathjax-offline') if f.name == mathjax_path)
shutil.copyfile(shipped.locate(), Path(__file__).parent / '_static' / mathjax_path)
