"""
The project on one page, made from README.md, docs/ and results/: its architectures, its races, and all pages.

    python -m extras.gallery [--out=gallery.html]

The page is one file with its pictures inside, so it opens from disk.  Links to code lead to the files of this folder.
"""

import base64
import json
import os
import re
from pathlib import Path

import matplotlib

matplotlib.use('Agg')       # before pyplot is imported

import jinja2
import matplotlib.pyplot as plt

from harness import ROOT, Arguments, UserError, command
from harness.files import atomic
from race.page import INK, dots_size, draw_dots, svg
from race.statistics import main_metric, values, verdicts

TYPES = {'.png': 'image/png', '.svg': 'image/svg+xml'}
STYLE = dict.fromkeys(('text.color', 'axes.edgecolor', 'axes.labelcolor', 'xtick.color', 'ytick.color'), INK) | {
    'svg.fonttype': 'none', 'font.size': 11, 'font.family': 'sans-serif'}


def anchor(heading):
    """The #anchor of a heading, as GitHub makes it."""
    return re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')


def address(target, page, folder):
    """Where a link of the Markdown file `page` leads in the gallery, a file in `folder`: to a page in it, or to a file."""
    name, _, place = target.partition('#')
    path = (page.parent / name).resolve() if name else page
    if path.suffix == '.md' and path.is_relative_to(ROOT):
        return f'#page-{path.stem}' + f'-{place}' * bool(place)
    return Path(os.path.relpath(path, folder)).as_posix()


def render(page, folder):
    """A Markdown file as HTML: its headings have anchors, its links lead to address(), its pictures are inside."""
    from markdown_it import MarkdownIt
    parser = MarkdownIt('commonmark').enable('table')
    tokens = parser.parse(page.read_text(encoding='utf-8'))
    for i, token in enumerate(tokens):
        if token.type == 'heading_open':
            text = ''.join(part.content for part in tokens[i + 1].children if part.type in ('text', 'code_inline'))
            token.attrSet('id', f'page-{page.stem}-{anchor(text)}')
        for part in token.children or ():
            if part.type == 'link_open' and '://' not in part.attrs['href']:
                part.attrSet('href', address(part.attrs['href'], page, folder))
            if part.type == 'image':
                part.attrSet('src', inside(page.parent / part.attrs['src']))
    html = parser.renderer.render(tokens, parser.options, {})
    return re.sub('(<table>.*?</table>)', r'<div class="scroll">\1</div>', html, flags=re.S)


def inside(path):
    return f'data:{TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}'


def architectures(pages):
    """The pages with a diagram: name, title, first paragraph, diagram."""
    found = []
    for page in pages:
        diagram = ROOT / 'docs' / 'img' / f'{page.stem}.svg'
        if diagram.exists():
            title, *paragraphs = page.read_text(encoding='utf-8').split('\n\n')
            about = next(p for p in paragraphs if not p.startswith(('[Back', '!', '    ', '#')))
            about = re.sub(r'[`*]', '', re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', ' '.join(about.split())))
            found.append({'name': page.stem, 'title': title.lstrip('# '), 'about': about, 'diagram': inside(diagram)})
    return found


def races(pages):
    """The records of races: name, the page with its table, verdicts, and the final metric of each run."""
    texts, found = {page.stem: page.read_text(encoding='utf-8') for page in pages}, []
    for path in sorted((ROOT / 'results').glob('*.json')):
        record = json.loads(path.read_text(encoding='utf-8'))
        if not any(values(e, main_metric(record)) for e in record.get('entrants', ())):
            continue        # of speeds or of a sweep
        with plt.rc_context(STYLE):
            fig, ax = plt.subplots(figsize=dots_size(record), layout='constrained')
            draw_dots(ax, record)
            picture = re.sub(r' id="\w+_\d+"', '', svg(fig))        # they are the same in each picture
            plt.close(fig)
        page = next(name for name, text in texts.items() if f'<!-- results/{path.name} -->' in text)
        found.append({'name': path.stem, 'page': page, 'verdicts': verdicts(record), 'picture': picture,
                      'command': record['command']})
    return found


def main(argv):
    parser = Arguments(description=__doc__)
    parser.add_argument('--out', default='gallery.html', help='the page to write (default: gallery.html)')
    args = parser.parse_args(argv)
    try:
        import markdown_it  # noqa: F401
    except ImportError:
        raise UserError('the gallery needs the package markdown-it-py: pip install markdown-it-py') from None
    out, readme = Path(args.out), ROOT / 'README.md'
    pages = [readme, *sorted((ROOT / 'docs').glob('*.md'))]
    folder = out.resolve().parent
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        Path(__file__).with_suffix('.html').read_text(encoding='utf-8'))
    text = template.render(
        architectures=architectures(pages), races=races(pages),
        about=readme.read_text(encoding='utf-8').split('\n\n')[1:3], pages=[
            {'name': page.stem, 'title': page.read_text(encoding='utf-8').split('\n')[0].lstrip('# '),
             'content': render(page, folder)} for page in pages])
    try:
        with atomic(out, 'w') as f:
            f.write(text)
    except OSError as e:
        raise UserError(f'{out} cannot be written ({e.strerror}): choose another file by --out') from None
    print(out)


if __name__ == '__main__':
    command(main)
