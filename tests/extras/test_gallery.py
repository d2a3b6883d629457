"""The gallery: one file without anything from elsewhere, whose links lead somewhere, and which shows every record and page."""

import re
from html import unescape

import pytest

from harness import ROOT

pytest.importorskip('markdown_it', reason='extras/gallery.py needs markdown-it-py')
from extras import gallery


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp('gallery') / 'gallery.html'
    gallery.main([f'--out={path}'])
    return path


def test_links_lead_somewhere_and_pictures_are_inside(page):
    text = page.read_text(encoding='utf-8')
    assert all(src.startswith('data:image/') for src in re.findall(r'<img src="([^"]*)"', text))
    assert not re.findall(r'<(?:script|link|iframe)[^>]*(?:src|href)=', text)
    ids, links = re.findall(r' id="([^"]+)"', text), {unescape(link) for link in re.findall(r'<a [^>]*?href="([^"]+)"', text)}
    assert len(links) > 50
    for link in links:
        if link.startswith('#'):
            assert ids.count(link[1:]) == 1, link
        elif '://' not in link:
            assert (page.parent / link.partition('#')[0]).exists(), link


def test_every_page_and_race_is_shown(page):
    text = page.read_text(encoding='utf-8')
    for path in [ROOT / 'README.md', *(ROOT / 'docs').glob('*.md')]:
        assert f'<details id="page-{path.stem}">' in text
    shown = re.findall(r'<article class="card"><h3><a href="#page-(\w+)">(\w+)</a>', text)
    assert ('pacing', 'pacing_tokens') in shown and ('racing', 'race_120s') in shown and len(shown) > 10
    cards = set(re.findall('<a class="card" href="#page-(.*?)">', text))
    assert cards <= {path.stem for path in (ROOT / 'docs' / 'img').glob('*.svg')} and {'pacing', 'mamba', 'dalle'} <= cards
