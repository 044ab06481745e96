"nbconvert's settings for README.md: nbs/index.ipynb without its hidden cells, with links that hold at the root of the project."

import posixpath
import re

from nbconvert.preprocessors import Preprocessor
from nbformat.v4 import new_markdown_cell

link = re.compile(r'(\]\(|\b(?:src|href)=")([^)"\s]+)')  # the address of a Markdown or HTML link
fence = re.compile(r'(^```.*?^```)', re.M | re.S)  # code is left as it is
directive = re.compile(r'^#\|\s*(.*)\n?', re.M)  # nbdev's lines


def from_root(found):
    "An address as seen from the root; one that leaves the page's folder structure alone stays."
    before, address = found.groups()
    if re.match(r'[a-z]+:|#|/', address):
        return found[0]
    return before + posixpath.normpath(posixpath.join('nbs', address))


def relink(text):
    return ''.join(t if t.startswith('```') else link.sub(from_root, t) for t in fence.split(text))


class Readme(Preprocessor):
    "Drop what nbdev hides, keep the rest."

    def preprocess(self, nb, resources):
        nb.cells = [c for c in nb.cells if not re.search(r'^#\|\s*hide\s*$', c.source, re.M)]
        for cell in nb.cells:
            if cell.cell_type == 'markdown':
                cell.source = relink(cell.source)
            if cell.cell_type == 'code':
                self.code(cell)
        nb.cells.insert(
            0, new_markdown_cell('<!-- Made from nbs/index.ipynb by `make readme`: edit that notebook. -->')
        )
        nb.metadata.language_info = {'name': 'python'}
        return nb, resources

    def code(self, cell):
        "A cell without its directives, or without its code where they say so."
        if 'echo: false' in directive.findall(cell.source):
            cell.metadata.transient = {'remove_source': True}
        cell.source = directive.sub('', cell.source).strip()
        for output in cell.outputs:
            if 'text/markdown' in output.get('data', {}):
                output.data['text/markdown'] = relink(output.data['text/markdown'])


c = get_config()  # noqa: F821 (given by nbconvert)
c.MarkdownExporter.preprocessors = [Readme]
c.NbConvertBase.display_data_priority = ['text/markdown', 'text/html', 'image/svg+xml', 'image/png', 'text/plain']
