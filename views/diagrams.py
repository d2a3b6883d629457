"""
Draw the diagrams of docs/, one per architecture:

    python -m views.diagrams            # docs/img/*.svg

Colours are mid-tones on a transparent background, so a diagram reads on a light page and on a dark one.
"""

import math
from html import escape

from harness import ROOT, Arguments, command
from harness.files import atomic

BLUE, GREEN, ORANGE, RED, GREY = '#2f74a8', '#2f8458', '#b3690f', '#b8434f', '#6b737c'
INK = '#757c85'         # text and arrows on the page's own background
TRAINED, FROZEN = GREEN, GREY


def text(x, y, s, size=14, color=INK, anchor='middle', weight=500):
    return (f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{color}" text-anchor="{anchor}" font-weight="{weight}">'
            f'{escape(s)}</text>')


def box(x, y, w, h, s='', color=BLUE, size=14, opacity=1.0):
    """A filled rectangle with white lines of text, centred."""
    lines = s.split('\n') if s else []
    top = y + h / 2 + size * 0.36 - (len(lines) - 1) * size * 0.6
    return (f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="5" fill="{color}" fill-opacity="{opacity:g}"/>'
            + ''.join(text(x + w / 2, top + i * size * 1.2, line, size, 'white') for i, line in enumerate(lines)))


def path(points, color=INK, arrow=False, width=1.8, dash=''):
    d = 'M' + ' L'.join(f'{x:g},{y:g}' for x, y in points)
    return (f'<path d="{d}" fill="none" stroke="{color}" stroke-width="{width}"'
            + (f' stroke-dasharray="{dash}"' if dash else '') + (' marker-end="url(#arrow)"' if arrow else '') + '/>')


def arrow(*points):
    return path(points, arrow=True)


def dot(x, y, color=RED, r=4):
    return f'<circle cx="{x:g}" cy="{y:g}" r="{r}" fill="{color}"/>'


def sign(x, y, s):
    """An operation, + or x, in a circle."""
    return (f'<circle cx="{x:g}" cy="{y:g}" r="12" fill="none" stroke="{INK}" stroke-width="1.8"/>'
            + text(x, y + 6, s, 18))


def svg(width, height, title, *parts):
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" font-family="Helvetica, Arial, sans-serif">\n<title>{escape(title)}</title>\n'
            f'<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0,0 L8,4 L0,8 z" fill="{INK}"/></marker></defs>\n' + '\n'.join(parts) + '\n</svg>\n')


def column(x, y, w, steps, gap=16, h=34):
    """Boxes (text, colour) from top to bottom, joined by arrows."""
    parts = []
    for i, (s, color) in enumerate(steps):
        at = y + i * (h + gap)
        parts += [box(x, at, w, h, s, color), *([arrow((x + w / 2, at - gap), (x + w / 2, at))] if i else [])]
    return parts


def pacing():
    rows, columns, size, x0, y0 = ['First Ci', 'tizen:⏎B', 'efore we', ' proceed'], 8, 50, 20, 62
    here = 3 * columns + 4
    offsets = {up * columns - right for up in range(4) for right in range(-3, 4) if up * columns >= right}
    parts = [text(x0 + 4 * size, 26, 'text as a grid of 8 columns, and the causal 7 x 7 kernel', 15),
             text(x0 + 4 * size, 46, 'small numbers: how many tokens back', 13)]
    for at, character in enumerate(''.join(rows)):
        x, y, back = x0 + at % columns * size, y0 + at // columns * size, here - at
        kind = RED if not back else BLUE if back in offsets else GREY
        parts += [box(x + 2, y + 2, size - 4, size - 4, color=kind, opacity=1 if back in offsets else 0.35),
                  text(x + size / 2, y + 25, character.replace(' ', '␣'), 19, 'white' if back in offsets else INK)]
        parts += [text(x + size / 2, y + 42, f'{back}', 11, 'white')] if back in offsets else []
    below = y0 + 4 * size
    for i, (color, opacity, s) in enumerate([
            (RED, 1, 'the current token, which predicts the next'),
            (BLUE, 1, 'read by the kernel: 25 taps with the current token'),
            (GREY, 0.35, 'not read: later tokens, and the gaps 4, 12 and 20 back')]):
        parts += [box(x0 + 2, below + 16 + 22 * i, 15, 15, color=color, opacity=opacity),
                  text(x0 + 26, below + 28 + 22 * i, s, 13, anchor='start')]
    x, w = 520, 250
    parts += [text(x + w / 2, 26, 'one block of ConvNeXt V2, (B, T, C) to (B, T, C)', 15),
              *column(x, 62, w, [('depthwise convolution, 25 taps', BLUE), ('LayerNorm', GREY),
                                 ('linear, C to 4C, and GELU', BLUE),
                                 ('GRN, norm of the rows above', ORANGE), ('linear, 4C to C', BLUE)], h=36),
              arrow((x + w / 2, 36), (x + w / 2, 62)), sign(x + w / 2, 336, '+'), arrow((x + w / 2, 306), (x + w / 2, 324)),
              arrow((x + w / 2, 44), (x + w + 30, 44), (x + w + 30, 336), (x + w / 2 + 13, 336))]
    return svg(830, 360, 'PACING: the causal grid and one block', *parts)


def wavegpt():
    parts, y = [], 250
    for i, character in enumerate('Citizen:'):
        parts.append(box(20 + 36 * i, y, 32, 32, character, ORANGE))
    for i, character in enumerate('Before w'):
        parts.append(box(350 + 36 * i, y, 32, 32, character.replace(' ', '␣'), BLUE))
    parts += [text(162, y + 54, 'the memory: M tokens before the window'), text(492, y + 54, 'the window: T tokens')]
    # the joining WaveNet: 8 -> 4 -> 2 -> 1 in the drawing
    for level, n in enumerate((4, 2, 1)):
        step, top = 288 / n, 200 - 48 * level
        for i in range(n):
            x = 20 + step * (i + 0.5) - 2
            for side in (-step / 4, step / 4):
                parts.append(path([(x + side, top + (50 if not level else 48)), (x, top + 24)], width=1.4))
            parts.append(box(x - 18, top, 36, 24, color=ORANGE))
    parts += [text(262, 134, 'WaveNet', anchor='start'), text(262, 152, '(B, 1, C)', 13, anchor='start'),
              box(350, 130, 284, 84, 'causal transformer\n(B, T, C)', BLUE, 15),
              *(arrow((366 + 36 * i, y), (366 + 36 * i, 214)) for i in range(8)),
              box(210, 38, 290, 40, 'alpha · decoder + (1 - alpha) · WaveNet', GREEN),
              arrow((162, 104), (162, 58), (210, 58)), text(156, 84, '1 - alpha', anchor='end'),
              arrow((492, 130), (492, 100), (440, 100), (440, 78)), text(500, 108, 'alpha', anchor='start'),
              arrow((500, 58), (530, 58)), box(530, 38, 150, 40, 'LayerNorm, logits', GREY)]
    return svg(700, 320, 'WaveGPT: a transformer over the window and a WaveNet over the tokens before it', *parts)


def curve(x0, y0, w, h, knots, color=RED, dots=True):
    """A piecewise linear function through knots (x in [-1, 1], y in [-1, 1])."""
    at = [(x0 + (x + 1) / 2 * w, y0 + (1 - y) / 2 * h) for x, y in knots]
    return [path(at, color, width=2.4), *(dot(*p, color) for p in at if dots)]


def frame(x, y, w, h):
    return f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" fill="none" stroke="{INK}" stroke-opacity="0.6" rx="4"/>'


def highorder():
    parts = [text(150, 26, 'a layer: every edge is a function', 15)]
    shapes = [[(-1, -.6), (0, .7), (1, -.2)], [(-1, .8), (0, -.5), (1, .4)], [(-1, -.2), (0, -.8), (1, .9)]]
    for i, knots in enumerate(shapes):
        y = 60 + i * 84
        parts += [box(20, y + 14, 44, 32, f'x{"₁₂₃"[i]}', BLUE), arrow((64, y + 30), (96, y + 30)), frame(98, y, 90, 60),
                  *curve(98, y, 90, 60, knots), arrow((188, y + 30), (258, 174 + (i - 1) * 8))]
    parts += [sign(272, 174, '+'), arrow((285, 174), (305, 174)), box(306, 158, 44, 32, 'y', GREEN),
              text(185, 318, 'y = f₁(x₁) + f₂(x₂) + f₃(x₃)')]
    x, y, w, h = 460, 62, 260, 200
    px = [x + 40, x + w / 2, x + w - 40]
    py = [y + 130, y + 40, y + 150]
    parts += [text(x + w / 2, 26, 'one edge function (n = 2, segments = 2)', 15), frame(x, y, w, h),
              *(path([(v, y), (v, y + h)], width=1, dash='3 4') for v in px),
              path([(x, y + 130 + 40 * 90 / 90), (px[0], py[0])], RED, width=2.4, dash='6 4'),
              path([(px[0], py[0]), (px[1], py[1])], ORANGE, width=4), path([(px[1], py[1]), (px[2], py[2])], RED, width=2.4),
              path([(px[2], py[2]), (x + w, py[2] + 40 * 110 / 90)], RED, width=2.4, dash='6 4'),
              *(dot(a, b) for a, b in zip(px, py, strict=True)),
              *(text(v, y + h + 20, s) for v, s in zip(px, ('-1', '0', '1'), strict=True)),
              path([(x + 85, y + h), (x + 85, y + 86)], INK, width=1.4), text(x + 85, y + h + 20, 'x', 14, ORANGE),
              text(x + w / 2, 304, 'dots: trained values; thick: the piece that x uses', 13),
              text(x + w / 2, 322, 'dashed: straight lines outside of [-1, 1]', 13)]
    return svg(780, 335, 'High-order networks: a layer of edge functions', *parts)


def mamba():
    x = 150
    parts = [text(190, 26, 'one block, (B, T, C) to (B, T, C)', 15), arrow((190, 34), (190, 56)),
             box(80, 56, 220, 34, 'RMSNorm', GREY), arrow((190, 90), (190, 106)),
             box(80, 106, 220, 34, 'linear, C to 2E', BLUE),
             arrow((x - 30, 140), (x - 30, 160)), arrow((290, 140), (290, 260)),
             box(30, 160, 180, 34, 'convolution of 4, SiLU', BLUE), arrow((120, 194), (120, 210)),
             box(30, 210, 180, 50, 'Δ, b, c from the token;\nselective scan', ORANGE),
             arrow((120, 260), (120, 290), (178, 290)), box(240, 260, 100, 34, 'SiLU', GREY), arrow((240, 290), (203, 290)),
             sign(190, 290, 'x'), arrow((190, 303), (190, 322)), box(80, 322, 220, 34, 'linear, E to C', BLUE),
             arrow((190, 356), (190, 374)), sign(190, 387, '+'),
             arrow((190, 40), (14, 40), (14, 387), (177, 387)), text(298, 206, 'gate', anchor='start')]
    x0, gap = 420, 130
    parts += [text(x0 + 190, 26, 'the scan: a state of N numbers per channel', 15)]
    for i in range(3):
        x = x0 + i * gap
        parts += [box(x, 176, 74, 48, f'h{"₁₂₃"[i]}', ORANGE, 17), box(x + 9, 286, 56, 34, f'x{"₁₂₃"[i]}', BLUE),
                  arrow((x + 37, 286), (x + 37, 224)), text(x + 43, 262, 'Δ b', anchor='start'),
                  arrow((x + 37, 176), (x + 37, 116)), text(x + 43, 152, 'c', anchor='start'),
                  box(x + 9, 82, 56, 34, f'y{"₁₂₃"[i]}', GREEN), arrow((x + 74, 200), (x + gap, 200)),
                  text(x + 103, 190, 'exp(ΔA)', 12)]
    parts += [text(x0 + 120, 358, 'h ← exp(Δ A) h + Δ b x', 15), text(x0 + 290, 358, 'y = c · h', 15),
              text(x0 + 190, 382, 'Δ, b and c differ from token to token; A is negative and trained', 13)]
    return svg(830, 410, 'Mamba: one block, and the selective scan', *parts)


def llama():
    c = 190
    parts = [text(c, 26, 'one block, (B, T, C) to (B, T, C)', 15), arrow((c, 34), (c, 54)),
             box(80, 54, 220, 32, 'RMSNorm', GREY)]
    for x, w, s in ((46, 112, 'q: H heads'), (166, 82, 'k: G'), (256, 82, 'v: G')):
        parts += [box(x, 106, w, 32, s, BLUE), arrow((x + w / 2, 86), (x + w / 2, 106))]
    parts += [box(46, 156, 202, 32, 'rotate by position', ORANGE), arrow((102, 138), (102, 156)), arrow((207, 138), (207, 156)),
              arrow((147, 188), (147, 206)), arrow((297, 138), (297, 206)),
              box(46, 206, 292, 32, 'attention to the last block_size tokens', BLUE), arrow((c, 238), (c, 254)),
              box(80, 254, 220, 32, 'linear, H · D to C', BLUE), arrow((c, 286), (c, 302)), sign(c, 315, '+'),
              arrow((c, 44), (20, 44), (20, 315), (c - 13, 315)), arrow((c, 328), (c, 350)),
              box(80, 350, 220, 32, 'RMSNorm', GREY),
              arrow((120, 382), (120, 400)), arrow((270, 382), (270, 400)), box(46, 400, 142, 32, 'linear, C to E', BLUE),
              box(200, 400, 138, 32, 'linear, C to E', BLUE), arrow((120, 432), (120, 460), (c - 13, 460)),
              text(114, 452, 'SiLU', 13, anchor='end'), arrow((270, 432), (270, 460), (c + 13, 460)), sign(c, 460, 'x'),
              arrow((c, 473), (c, 490)), box(80, 490, 220, 32, 'linear, E to C', BLUE), arrow((c, 522), (c, 538)),
              sign(c, 551, '+'), arrow((c, 339), (20, 339), (20, 551), (c - 13, 551))]
    x0, r = 400, 46
    parts += [text(x0 + 215, 26, 'rotary positions: pair i of a query or key turns by t · f[i]', 15)]
    for i, (turn, s) in enumerate(((1.1, 'pair 0, fast'), (0.45, 'pair 1'), (0.12, 'pair 2, slow'))):
        x, y = x0 + 65 + 150 * i, 104
        parts.append(f'<circle cx="{x}" cy="{y}" r="{r}" fill="none" stroke="{INK}" stroke-opacity="0.6"/>')
        for t in range(4):
            tip = x + r * math.cos(turn * t), y - r * math.sin(turn * t)
            parts += [path([(x, y), tip], RED if t == 3 else BLUE, width=2.4), dot(*tip, RED if t == 3 else BLUE)]
        parts.append(text(x, 174, s, 13))
    parts += [text(x0 + 215, 200, 'at positions t = 0, 1, 2 and 3 (red); q at t times k at s depends on t - s only', 13),
              text(x0 + 215, 252, 'grouped queries: H = 4 query heads, G = 2 of keys and values', 15)]
    for i in range(4):
        x = x0 + 60 + 90 * i
        parts += [box(x, 268, 40, 32, f'q{i}', BLUE), arrow((x + 20, 300), (x0 + 125 + 180 * (i // 2), 326))]
    parts += [box(x0 + 85 + 180 * i, 326, 80, 32, f'k{i}, v{i}', GREEN) for i in range(2)]
    parts += [text(x0 + 215, 412, 'the cache: position t is in slot t mod block_size (8 here)', 15)]
    for i, t in enumerate((8, 9, 10, 3, 4, 5, 6, 7)):
        kind = RED if t == 10 else GREY if t == 3 else GREEN
        parts += [box(x0 + 15 + 50 * i, 430, 46, 40, f'{t}', kind, 16), text(x0 + 38 + 50 * i, 488, f'slot {i}', 12)]
    parts += [text(x0 + 215, 516, 'red: the newest token; grey: the oldest, which token 11 overwrites', 13)]
    return svg(840, 575, 'Llama: one block, rotary positions, grouped queries and the cache', *parts)


def bert():
    x0, step, y = 20, 48, 300
    parts = [text(x0 + 4.5 * step, 26, 'a window: two tokens of it are to be predicted', 15)]
    for i, (given, true) in enumerate(zip(['T', 'o', ' ', 'b', '[MASK]', ' ', 'o', 'k', ' '], 'To be or ', strict=True)):
        x, scored = x0 + i * step, i in (4, 7)
        parts += [box(x + 2, y, step - 4, 36, given.replace(' ', '␣'), ORANGE if scored else BLUE, 11 if i == 4 else 15),
                  arrow((x + step / 2, y), (x + step / 2, y - 28)),
                  *([arrow((x + step / 2, 112), (x + step / 2, 88)),
                     box(x + 2, 52, step - 4, 36, true, GREEN, 15)] if scored else [])]
    for a in range(9):      # one layer of attention: every position to the two predicted ones
        parts += [path([(x0 + (a + 0.5) * step, 246), (x0 + (b + 0.5) * step, 178)], ORANGE if a == b else INK, width=1.1)
                  for b in (4, 7)]
    parts += [box(x0, 112, 9 * step, 40, 'head: dense layer, LayerNorm, tied output layer', GREEN),
              *(arrow((x0 + (b + 0.5) * step, 178), (x0 + (b + 0.5) * step, 152)) for b in (4, 7)),
              box(x0, 246, 9 * step, 26, 'each block: every position sees every position', GREY, 13),
              text(x0 + 4.5 * step, 366, 'of the predicted tokens: 80 % [MASK], 10 % a random token', 13),
              text(x0 + 4.5 * step, 384, "('k' in place of 'r'), 10 % left as they are", 13)]
    c = 620
    parts += [text(c, 26, 'one block, (B, T, C) to (B, T, C)', 15),
              *column(c - 110, 62, 220, [('attention, both directions', BLUE)], h=34), arrow((c, 36), (c, 62)),
              arrow((c, 96), (c, 112)), sign(c, 125, '+'), arrow((c, 48), (c + 140, 48), (c + 140, 125), (c + 13, 125)),
              arrow((c, 138), (c, 156)), box(c - 110, 156, 220, 34, 'LayerNorm', GREY), arrow((c, 190), (c, 216)),
              box(c - 110, 216, 220, 34, 'MLP: linear, GELU, linear', BLUE), arrow((c, 250), (c, 266)), sign(c, 279, '+'),
              arrow((c, 202), (c + 140, 202), (c + 140, 279), (c + 13, 279)), arrow((c, 292), (c, 310)),
              box(c - 110, 310, 220, 34, 'LayerNorm', GREY), arrow((c, 344), (c, 366)),
              text(c, 388, 'post-norm: the norm stands on the residual stream', 13)]
    return svg(790, 405, 'BERT: masked tokens, and one block', *parts)


def transformer():
    c, e = 400, 120
    parts = [text(e, 26, 'encoder block', 15), text(c, 26, 'decoder block', 15)]

    def branch(x, y, label, color):
        """A sublayer with its residual branch and the norm behind it, from y to y + 128."""
        return [arrow((x, y - 14), (x, y)), box(x - 95, y, 190, 32, label, color), arrow((x, y + 32), (x, y + 46)),
                sign(x, y + 59, '+'), arrow((x, y - 8), (x - 110, y - 8), (x - 110, y + 59), (x - 13, y + 59)),
                arrow((x, y + 72), (x, y + 84)), box(x - 95, y + 84, 190, 28, 'LayerNorm', GREY)]
    parts += [*branch(e, 184, 'attention, both directions', BLUE), *branch(e, 310, 'feed-forward, ReLU', BLUE),
              *branch(c, 58, 'attention to what came before', BLUE), *branch(c, 184, 'cross-attention', ORANGE),
              *branch(c, 310, 'feed-forward, ReLU', BLUE)]
    parts += [path([(e, 422), (e, 440), (250, 440), (250, 200)], ORANGE, width=2.4),
              path([(250, 200), (303, 200)], ORANGE, arrow=True, width=2.4), text(e, 162, 'source + positions', 13),
              arrow((c, 422), (c, 440)), text(c, 456, 'output layer, logits (B, T, V)', 13),
              text(e, 458, 'keys and values for each decoder block', 13)]
    x0, y0, size = 560, 96, 28
    parts += [text(x0 + 130, 26, 'attention: each row reads the columns', 15)]
    for k, (title, rows, columns, seen) in enumerate((
            ('source', 3, 3, lambda i, j: True), ('target', 4, 4, lambda i, j: j <= i), ('cross', 4, 3, lambda i, j: True))):
        x, y = x0 + 150 * (k % 2), y0 + 180 * (k // 2)
        for i in range(rows):
            for j in range(columns):
                on = seen(i, j)
                parts.append(box(x + size * j, y + size * i, size - 3, size - 3, color=ORANGE if k == 2 and on else BLUE if on
                                 else GREY, opacity=1 if on else 0.25))
        parts.append(text(x + size * columns / 2, y - 12, {'source': 'source to source', 'target': 'target to target',
                                                           'cross': 'target to source'}[title], 13))
    parts += [text(x0 + 205, 320, 'grey: later tokens,', 13), text(x0 + 205, 338, 'which are hidden', 13)]
    return svg(860, 475, 'The Transformer: a block of the encoder, a block of the decoder, and what attends to what', *parts)


def imagegpt():
    cells, shade = '0012012201210000', {'0': GREY, '1': BLUE, '2': ORANGE}
    x0, y0, size = 20, 52, 34
    parts = [text(x0 + 2 * size, 26, 'a picture of 4 x 4', 15)]
    for i, c in enumerate(cells):
        parts.append(box(x0 + size * (i % 4), y0 + size * (i // 4), size - 2, size - 2, color=shade[c]))
    parts += [text(x0 + 2 * size, 212, 'a palette of 3 colours', 13)]
    parts += [box(x0 + 10 + 42 * int(c), 224, 32, 28, c, shade[c]) for c in '012']
    parts += [arrow((x0 + 4 * size + 8, 118), (200, 118))]
    x, step = 210, 36
    parts += [text(x + 5.5 * step, 26, 'a window is a picture: its start, then its pixels in reading order', 15)]
    for i, (given, made) in enumerate(zip(['start', *cells[:9], '…'], [*cells[:10], '…'], strict=True)):
        at = x + i * step
        parts += [box(at + 1, 196, step - 3, 34, given, shade.get(given, GREEN), 10 if given == 'start' else 15),
                  arrow((at + step / 2, 196), (at + step / 2, 178)), arrow((at + step / 2, 124), (at + step / 2, 106)),
                  box(at + 1, 70, step - 3, 34, made, shade.get(made, GREEN), 15)]
    parts += [box(x, 126, 11 * step, 50, 'any language model: GPT, Llama, PACING, Mamba, WaveGPT', INK, 13),
              text(x + 5.5 * step, 58, 'each position predicts the next pixel, also the first', 13),
              text(x + 5.5 * step, 252, 'to complete a picture: give the first rows, and sample the rest', 13)]
    c = 735
    parts += [text(c, 26, 'the second stage', 15)]
    for i, y in enumerate((196, 146, 96)):
        parts += [box(c - 105, y, 100, 34, f'block {i + 1}', FROZEN), arrow((c - 5, y + 17), (c + 18, y + 17)),
                  box(c + 18, y, 96, 34, 'linear', TRAINED),
                  *([arrow((c - 55, y + 50), (c - 55, y + 34))] if i else [arrow((c - 55, 250), (c - 55, 230))])]
    parts += [text(c + 66, 84, 'class?', 14), text(c, 58, 'the mean over the positions of each layer', 13),
              text(c - 55, 266, 'pixels', 13)]
    return svg(880, 280, 'Image-GPT: a picture as a text of pixels, and linear probes of its layers', *parts)


def captions():
    parts, size, words = [], 26, ['a', 'red', 'circle', 'above', 'a', 'blue', 'square']
    for i in range(16):     # a circle above a square, in patches
        parts.append(box(20 + size * (i % 4), 70 + size * (i // 4), size - 2, size - 2, color=GREY, opacity=0.3))
    parts += [dot(20 + 2 * size, 70 + size, RED, 15), box(34 + size, 70 + 2.4 * size, 30, 30, color=BLUE),
              text(72, 52, 'patches'), arrow((128, 122), (156, 122)), box(156, 92, 104, 60, 'linear\n+ positions', GREEN),
              arrow((260, 122), (288, 122)), box(288, 92, 130, 60, 'encoder\n(B, S, C)', BLUE),
              path([(418, 122), (470, 122)], ORANGE, arrow=True, width=2.4), text(444, 112, 'keys,', 12),
              text(446, 142, 'values', 12), box(470, 62, 360, 120, color=BLUE), text(650, 88, 'decoder', 15, 'white'),
              box(486, 134, 328, 34, 'cross-attention: where to look for the next word', ORANGE, 13),
              text(650, 114, 'attention to the words before', 13, 'white')]
    for i, (word, read) in enumerate(zip(words, ['begin', *words], strict=False)):
        x, w = 474 + 51 * i, 46
        parts += [box(x, 16, w, 24, word, GREEN, 12), arrow((x + w / 2, 62), (x + w / 2, 42)),
                  box(x, 206, w, 24, read, GREY, 12), arrow((x + w / 2, 206), (x + w / 2, 184))]
    for k, (word, at) in enumerate((('circle', (1, 2, 5, 6)), ('square', (9, 10, 13, 14)))):
        x = 60 + 170 * k
        parts.append(text(x + 2 * 17, 208, f"before '{word}'", 13))
        parts += [box(x + 17 * (i % 4), 218 + 17 * (i // 4), 15, 15, color=ORANGE, opacity=0.95 if i in at else 0.2)
                  for i in range(16)]
    return svg(850, 300, 'Captions: the encoder reads patches, the decoder writes words', *parts)


def convnet():
    parts, size, x0, y0, at = [], 26, 20, 66, (2, 1)
    parts += [text(20, 26, 'ViT: an image is a sequence of patches', 15, anchor='start'),
              text(20, 46, 'in every layer the red patch reads all others', 13, anchor='start')]

    def centre(i, j):
        return x0 + size * j + size / 2 - 1, y0 + size * i + size / 2 - 1
    for i in range(4):
        for j in range(4):
            parts.append(box(x0 + size * j, y0 + size * i, size - 2, size - 2, color=RED if (i, j) == at else BLUE,
                             opacity=1 if (i, j) == at else 0.55))
            if (i, j) != at:
                parts.append(path([centre(i, j), centre(*at)], INK, width=0.9))
    parts += [text(x0 + 2 * size, y0 + 4 * size + 20, 'S patches', 13), arrow((126, 118), (148, 118)),
              box(148, 92, 86, 52, 'linear,\n+ positions', GREEN), arrow((234, 118), (256, 118)),
              box(256, 92, 86, 52, 'attention,\nMLP', BLUE), text(299, 162, 'n_layer times', 13),
              arrow((342, 118), (364, 118)), box(364, 92, 76, 52, 'class\ntoken', GREEN)]
    x0, y = 490, 118
    parts += [text(x0, 26, 'ResNet: an image stays an image', 15, anchor='start'),
              text(x0, 46, 'in a layer the red pixel reads its neighbours; coarser stages see further', 13, anchor='start')]
    for k, side in enumerate((88, 60, 40, 26)):     # a stage: half the pixels on a side, twice the channels
        top = y - side / 2
        parts += [box(x0, top, side, side, color=BLUE, opacity=0.4 + 0.2 * k),
                  text(x0 + side / 2, y + 64, f'{32 >> k} x {32 >> k}', 12), text(x0 + side / 2, y + 80, f'{1 << k}C', 12)]
        cell = 10
        parts += [box(x0 + side / 2 - 1.5 * cell, y - 1.5 * cell, 3 * cell - 1, 3 * cell - 1, color=ORANGE, opacity=0.8),
                  box(x0 + side / 2 - 0.5 * cell, y - 0.5 * cell, cell - 1, cell - 1, color=RED)] if k < 3 else []
        parts.append(arrow((x0 + side, y), (x0 + side + 20, y)))
        x0 += side + 20
    parts += [box(x0, 92, 76, 52, 'mean over\nplaces', GREEN)]
    x, y = 20, 258
    parts += [text(20, 232, 'one block of ResNet-18', 15, anchor='start'), path([(x, y + 18), (x + 20, y + 18)])]
    x += 20
    for s, w, color in (('3 x 3', 66, BLUE), ('batch norm', 92, GREY), ('ReLU', 56, ORANGE), ('3 x 3', 66, BLUE),
                        ('batch norm', 92, GREY)):
        parts += [box(x, y, w, 36, s, color), arrow((x + w, y + 18), (x + w + 20, y + 18))]
        x += w + 20
    parts += [sign(x + 12, y + 18, '+'), arrow((x + 24, y + 18), (x + 44, y + 18)), box(x + 44, y, 56, 36, 'ReLU', ORANGE),
              arrow((30, y + 18), (30, y + 62), (x + 12, y + 62), (x + 12, y + 31)),
              text((x + 30) / 2, y + 80, 'the residual path; a 1 x 1 convolution where the shape changes', 13)]
    return svg(930, 350, 'A Vision Transformer and a ResNet', *parts)


def clip():
    parts, size, x0, y0 = [], 40, 520, 96
    for i in range(3):      # pictures of a batch, in patches
        for j in range(9):
            parts.append(box(24 + 9 * i + 20 * (j % 3), 60 + 9 * i + 20 * (j // 3), 18, 18, opacity=0.3 + 0.3 * (i == 2)))
        parts.append(box(20 + 6 * i, 262 + 22 * i, 128, 18, ('a red circle', 'a blue square', 'a green star')[i], ORANGE, 12))
    parts += [text(64, 40, 'pictures'), text(84, 346, 'captions'), text(64, 160, 'S patches of D', 13),
              arrow((112, 98), (170, 98)), box(170, 66, 150, 64, 'ViT, read at its\nclass token', BLUE),
              arrow((160, 292), (180, 292)), box(180, 260, 150, 64, 'causal transformer,\nread at the end', ORANGE),
              *(piece for y, x, color in ((98, 320, BLUE), (292, 330, ORANGE)) for piece in (
                  arrow((x, y), (x + 20, y)), box(x + 20, y - 32, 84, 64, 'linear,\nlength 1', color))),
              text(x0 + 2.5 * size, 26, 'scale times cosine of each picture with each caption', 15)]
    for i in range(5):
        parts.append(box(x0 - 34, y0 + size * i + 5, 26, size - 14, color=BLUE))
        parts.append(box(x0 + size * i + 5, y0 - 34, size - 14, 26, color=ORANGE))
        for j in range(5):
            parts.append(box(x0 + size * j, y0 + size * i, size - 4, size - 4, color=GREEN if i == j else GREY,
                             opacity=1 if i == j else 0.3))
    right, below = x0 + 5 * size, y0 + 5 * size
    parts += [arrow((424, 98), (450, 98), (450, y0 + 2.5 * size), (x0 - 40, y0 + 2.5 * size)),
              path([(434, 292), (462, 292), (462, 46), (x0 + 2.5 * size, 46)]),
              arrow((x0 + 2.5 * size, 46), (x0 + 2.5 * size, y0 - 36)),
              text(right + 14, y0 + 92, 'each row: which caption?', 13, anchor='start'),
              text(right + 14, y0 + 112, 'each column: which picture?', 13, anchor='start'),
              text(x0 + 2.5 * size, below + 20, 'green: the pairs of the batch', 13),
              text(x0 + 2.5 * size, below + 38, 'loss: cross-entropy of both, their mean', 13)]
    return svg(900, 365, 'CLIP: two towers, and the similarities of a batch', *parts)


def dalle():
    parts, size, y = [], 16, 62

    def grid(x, color):
        return [box(x + size * j, y + size * i, size - 2, size - 2, color=color,
                    opacity=0.35 + 0.65 * ((i * 5 + j * 3) % 4) / 3) for i in range(4) for j in range(4)]
    parts += [text(16, 26, 'stage 1: the discrete VAE', 15, anchor='start'),
              *grid(16, BLUE), text(16, 150, 'image, in patches', 13, anchor='start'), arrow((84, 93), (108, 93)),
              box(108, 66, 96, 54, 'encoder,\n3 x 3', BLUE), arrow((204, 93), (228, 93)),
              box(228, 66, 120, 54, 'softmax over\nK codes + noise', ORANGE), arrow((348, 93), (372, 93)), *grid(372, ORANGE),
              text(403, 150, 'S tokens', 13), arrow((440, 93), (464, 93)), box(464, 66, 96, 54, 'decoder,\n3 x 3', BLUE),
              arrow((560, 93), (584, 93)), *grid(584, BLUE), text(615, 150, 'rebuilt', 13),
              text(288, 140, 'temperature 1 to 1/16', 13)]
    parts += [text(16, 196, 'stage 2: the transformer, with the VAE frozen', 15, anchor='start')]
    x, y = 16, 222
    for word in ('begin', 'a', 'red', 'circle', 'end', 'pad'):
        parts.append(box(x, y, 54, 30, word, GREY if word == 'pad' else GREEN, 13, 0.6 if word == 'pad' else 1))
        x += 58
    for k in range(6):
        parts.append(box(x, y, 30, 30, f'{k + 1}' if k < 5 else '...', ORANGE, 13))
        x += 34
    parts += [path([(16, 262), (16, 270), (360, 270), (360, 262)]), text(188, 290, 'caption, 1/8 of the loss', 13),
              path([(368, 262), (368, 270), (564, 270), (564, 262)]), text(466, 290, 'image, 7/8 of the loss', 13),
              text(16, 330, 'what a token of the image sees of it', 15, anchor='start')]
    side, cell, at = 5, 18, (3, 2)
    for k, (name, near) in enumerate((('full', lambda i, j: True), ('row', lambda i, j: i == at[0]),
                                      ('column', lambda i, j: j == at[1]),
                                      ('conv', lambda i, j: max(abs(i - at[0]), abs(j - at[1])) <= 1))):
        left, top = 30 + 160 * k, 350
        for i in range(side):
            for j in range(side):
                seen = near(i, j) and (i, j) <= at
                parts.append(box(left + cell * j, top + cell * i, cell - 2, cell - 2, opacity=1 if seen else 0.25,
                                 color=RED if (i, j) == at else ORANGE if seen else GREY))
        parts.append(text(left + side * cell / 2, top + side * cell + 18, name, 13))
    return svg(680, 475, 'DALL-E: tokens of an image, and a transformer that writes them after a caption', *parts)


def fpt():
    y, parts = 120, []
    for i in range(4):
        parts.append(box(16 + 14 * i, y - 12 + 12 * i, 26, 34, color=BLUE, opacity=0.55 + 0.15 * i))
    parts += [text(55, y + 88, 'T tokens of', 13), text(55, y + 106, 'D features', 13), arrow((92, y + 22), (114, y + 22)),
              box(114, y - 10, 84, 64, 'input\nlayer', TRAINED), arrow((198, y + 22), (216, y + 22)),
              box(216, y - 10, 90, 64, '+ positions', TRAINED), arrow((306, y + 22), (336, y + 22)),
              f'<rect x="336" y="{y - 32}" width="330" height="108" rx="8" fill="none" stroke="{INK}" stroke-dasharray="6 4"/>',
              text(501, y - 44, 'each block of the pretrained trunk')]
    x = 346
    for s, w, color in (('norm', 54, TRAINED), ('attention', 90, FROZEN), ('norm', 54, TRAINED), ('MLP', 76, FROZEN)):
        parts += [box(x, y - 10, w, 64, s, color), *([arrow((x + w, y + 22), (x + w + 12, y + 22))] if s != 'MLP' else [])]
        x += w + 12
    parts += [arrow((x - 12, y + 22), (684, y + 22)), box(684, y - 10, 54, 64, 'norm', TRAINED),
              arrow((738, y + 22), (756, y + 22)), box(756, y - 10, 84, 64, 'output\nlayer', TRAINED),
              text(798, y + 76, 'last position', 13),
              arrow((840, y + 22), (862, y + 22)), text(890, y + 27, 'answer'),
              box(346, 218, 16, 16, color=TRAINED), text(370, 231, 'trained', anchor='start'),
              box(450, 218, 16, 16, color=FROZEN), text(474, 231, 'frozen: no gradient, no optimizer state', anchor='start')]
    return svg(930, 250, 'FPT: a frozen trunk between trained layers', *parts)


DIAGRAMS = (pacing, wavegpt, highorder, mamba, llama, bert, transformer, captions, convnet, clip, imagegpt, dalle, fpt)


def main(argv):
    Arguments(description=__doc__).parse_args(argv)
    folder = ROOT / 'docs' / 'img'
    folder.mkdir(parents=True, exist_ok=True)
    for draw in DIAGRAMS:
        with atomic(folder / f'{draw.__name__}.svg', 'w') as f:
            f.write(draw())
        print(folder / f'{draw.__name__}.svg')


if __name__ == '__main__':
    command(main)
