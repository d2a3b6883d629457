"""The gallery: one file without anything from elsewhere, whose links lead somewhere, and which shows every record and page."""

import re
from html import unescape

import pytest

from harness import ROOT

pytest.importorskip('markdown_it', reason='extras/gallery.py needs markdown-it-py')
from extras import gallery


def test_everything_is_shown_links_lead_somewhere_and_pictures_are_inside(tmp_path):
    gallery.main([f'--out={tmp_path / "gallery.html"}'])
    text = (tmp_path / 'gallery.html').read_text(encoding='utf-8')
    assert all(src.startswith('data:image/') for src in re.findall(r'<img src="([^"]*)"', text))
    assert not re.findall(r'<(?:script|link|iframe)[^>]*(?:src|href)=', text)
    ids, links = re.findall(r' id="([^"]+)"', text), {unescape(link) for link in re.findall(r'<a [^>]*?href="([^"]+)"', text)}
    assert len(links) > 50
    for link in links:
        if link.startswith('#'):
            assert ids.count(link[1:]) == 1, link
        elif '://' not in link:
            assert (tmp_path / link.partition('#')[0]).exists(), link
    for path in [ROOT / 'README.md', *(ROOT / 'docs').glob('*.md')]:
        assert f'<details id="page-{path.stem}">' in text
    shown = re.findall(r'<article class="card"><h3><a href="#page-(\w+)">(\w+)</a>', text)
    assert ('pacing', 'pacing_tokens') in shown and ('racing', 'race_120s') in shown and len(shown) > 10
    cards = set(re.findall('<a class="card" href="#page-(.*?)">', text))
    assert cards <= {path.stem for path in (ROOT / 'docs' / 'img').glob('*.svg')} and {'pacing', 'mamba', 'dalle'} <= cards
