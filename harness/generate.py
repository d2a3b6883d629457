"""Generation: token ids in, token ids out, whatever the architecture."""

import statistics
import time

import torch


@torch.no_grad()
def generate(model, prompt, count, temperature=1.0, top_k=0, top_p=1.0, n_vocab=None, generator=None, reread=False):
    """Yields `count` times a (B,) tensor of token ids, continuing prompt (B, T), T >= 1.

    temperature 0 is greedy; top_k 0 keeps all tokens; top_p keeps the likeliest tokens that together reach it.
    n_vocab: ids from here on do not exist (a padded vocabulary) and are never drawn.  generator: of the CPU, which
    does the drawing, so a seed means the same on every device; or a list of them, one for each row.
    Uses the model's step() where it has one; else, or with reread, the window (and what the model has of memory before it)
    is read anew for every token."""
    new = prompt = prompt.to(next(model.parameters()).device)
    read = reader(model, len(prompt), reread)
    for _ in range(count):
        logits = read(new).float().cpu()                                    # (B, V)
        new = draw(logits, temperature, top_k, top_p, n_vocab, generator)[:, None].to(prompt.device)
        yield new[:, 0]


def reader(model, batch_size, reread=False):
    """A function that reads the next tokens (B, n) of each of the texts, and returns the logits (B, V) of the token after
    them; by step() or, where there is none or with reread, by the window anew."""
    state = model.init_state(batch_size) if getattr(model, 'step', None) and not reread else None
    text = None

    def read(new):
        nonlocal state, text
        if state is not None:
            logits, state = model.step(new, state)
            return logits
        longest = model.config.block_size + getattr(model, 'memory', 0)
        text = (new if text is None else torch.cat([text, new], dim=1))[:, -longest:]
        return model(window(model, text))[0][:, -1]
    return read


def window(model, text):
    """What a model reads of text (B, n): its window, and the memory before that, if it has one and all of it is there."""
    T, M = model.config.block_size, getattr(model, 'memory', 0)
    return text[:, -(T + M):] if text.shape[1] >= T + M else text[:, -T:]


def continuations(model, starts, count, temperature, top_k, top_p, n_vocab, seed):
    """Yields for each of starts (lists of ids) the ids that continue it, as generate() draws them.  Each has a seed of its own,
    seed + its number, so that it is the same alone and beside others.  One that is alone is continued as it is read."""
    how = (count, temperature, top_k, top_p, n_vocab)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(starts))]
    if len(starts) == 1:
        yield (int(row[0]) for row in generate(model, torch.tensor(starts), *how, generators))
        return
    texts, together = {}, {}
    for i, start in enumerate(starts):
        together.setdefault(len(start), []).append(i)       # starts of one length go through the model together
    for rows in together.values():
        ids = list(generate(model, torch.tensor([starts[i] for i in rows]), *how, [generators[i] for i in rows]))
        texts |= {i: torch.stack(ids)[:, k].tolist() for k, i in enumerate(rows)}
    yield from (texts[i] for i in range(len(starts)))


@torch.no_grad()
def reapply(model, x, temperature=0, top_k=0, top_p=1.0, n_vocab=None, generator=None):
    """One pass of a language cellular automaton over x (B, T), T of any length: all tokens are replaced at once, each by one
    drawn, as generate() does, from what a centered model says of it by its neighbours on both sides.  Returns (B, T).

    seed: "Run with centered model (language cellular automaton)" (its README)"""
    logits = model.both_sides(x.to(next(model.parameters()).device))                # (B, T, V)
    return draw(logits.float().cpu().flatten(0, 1), temperature, top_k, top_p, n_vocab, generator).view(x.shape)


def automaton(model, ids, passes, temperature=0, top_k=0, top_p=1.0, n_vocab=None, generator=None):
    """Yields the text ids, a list, and what each pass makes of it: (ids, None).  Where nothing is left to chance, what follows
    an earlier text that has come back is known: the last that is yielded is (ids, the number of that earlier pass)."""
    seen = {}
    for i in range(passes + 1):
        if i:
            ids = reapply(model, torch.tensor([ids]), temperature, top_k, top_p, n_vocab, generator)[0].tolist()
        earlier = seen.get(tuple(ids)) if temperature == 0 or top_k == 1 else None
        yield ids, earlier
        if earlier is not None:
            return
        seen[tuple(ids)] = i


def draw(logits, temperature, top_k, top_p, n_vocab=None, generator=None):
    """One token id for each row of logits (B, V): (B,)."""
    logits = logits.clone()
    if n_vocab is not None:
        logits[:, n_vocab:] = -torch.inf
    if temperature == 0:
        return logits.argmax(-1)
    logits = (logits - logits.amax(-1, keepdim=True)) / max(temperature, 1e-30)     # at most 0: no overflow to nan
    if 0 < top_k < logits.shape[-1]:
        logits[logits < logits.topk(top_k).values[:, -1:]] = -torch.inf
    p = logits.softmax(-1)
    if top_p < 1:
        ranked, order = p.sort(descending=True)
        ranked[ranked.cumsum(-1) - ranked >= top_p] = 0                     # the first token always stays
        p = torch.zeros_like(p).scatter_(1, order, ranked)
    if isinstance(generator, list):
        return torch.cat([torch.multinomial(row, 1, generator=g) for row, g in zip(p, generator, strict=True)])
    return torch.multinomial(p, 1, generator=generator)[:, 0]


def benchmark(model, prompt, count, n_vocab=None, most=200):
    """Times greedy generation from prompt (1, T).  Returns a dict: 'first', seconds to the first token; 'rate', tokens a second
    after it; 'growth', the cost of the last thousand tokens by that of the first thousand (None under 2,000); and, where the
    model has a step(), 'reread', tokens a second if the window is read anew for each of at most `most` tokens."""
    def timed(count, **how):
        began, times = time.perf_counter(), []
        for _ in generate(model, prompt, count, temperature=0, n_vocab=n_vocab, **how):
            times.append(time.perf_counter() - began)
            began = time.perf_counter()
        return times
    timed(2)
    first, *times = timed(count)
    found = {'first': first, 'rate': len(times) / sum(times), 'growth': None, 'reread': None}
    if len(times) >= 2000:
        found['growth'] = statistics.median(times[-1000:]) / statistics.median(times[:1000])
    if getattr(model, 'step', None):
        _, *times = timed(min(count, most), reread=True)
        found['reread'] = len(times) / sum(times)
    return found


def describe(found):
    """What benchmark() found, in a line."""
    said = f'first token after {found["first"] * 1e3:.1f} ms, then {found["rate"]:,.0f} tokens/s'
    if found['reread']:
        said += f'; reading the window anew {found["reread"]:,.0f} tokens/s (x {found["rate"] / found["reread"]:.1f})'
    if found['growth']:
        said += f'; a token of the last thousand costs {found["growth"]:.2f} times one of the first'
    return said
