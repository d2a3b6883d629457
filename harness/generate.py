"""Generation: token ids in, token ids out, for any architecture."""

import statistics
import time

import torch
import torch.nn.functional as F


@torch.no_grad()
def generate(model, prompt, count, temperature=1.0, top_k=0, top_p=1.0, n_vocab=None, generator=None, recompute=False):
    """Yields `count` times a (B,) tensor of token ids that continue prompt (B, T), T >= 1.

    temperature 0 is greedy.  top_k: sample from the k most likely tokens (0: from all).  top_p: sample from the smallest set of
    most likely tokens whose probabilities reach it.  n_vocab: ids from here on are padding of the vocabulary and are never
    sampled.  generator: a torch.Generator on the CPU, so a seed gives the same text on every device; or a list, one per row.
    Uses model.step() if there is one; without it, or with recompute, every token costs a pass over the whole window."""
    new = prompt = prompt.to(next(model.parameters()).device)
    read = reader(model, len(prompt), recompute)
    for _ in range(count):
        logits = read(new).float().cpu()                                    # (B, V)
        new = sample_token(logits, temperature, top_k, top_p, n_vocab, generator)[:, None].to(prompt.device)
        yield new[:, 0]


def reader(model, batch_size, recompute=False):
    """A function from the next tokens (B, n) of each text to the logits (B, V) of the token after them; it keeps the state of
    model.step(), or the text itself."""
    state = model.init_state(batch_size) if model.step and not recompute else None
    text = None

    def read(new):
        nonlocal state, text
        if state is not None:
            logits, state = model.step(new, state)
            return logits
        longest = model.config.block_size + model.memory
        text = (new if text is None else torch.cat([text, new], dim=1))[:, -longest:]
        return model(window(model, text))[0][:, -1]
    return read


def window(model, text):
    """The end of text (B, n) that the model reads: its window, after its memory if the text is long enough to fill both."""
    T, M = model.config.block_size, model.memory
    return text[:, -(T + M):] if text.shape[1] >= T + M else text[:, -T:]


def continuations(model, starts, count, temperature, top_k, top_p, n_vocab, seed, longest=None):
    """Yields an iterable of ids for each of starts (lists of ids), as generate() samples them.  The text with number i has the
    seed `seed` + i, so it does not depend on the others.  A single text is streamed.  longest: the most tokens of a text, after
    its first."""
    def options(start):
        return count if longest is None else min(count, longest + 1 - len(start)), temperature, top_k, top_p, n_vocab
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(starts))]
    if len(starts) == 1:
        yield (int(row[0]) for row in generate(model, torch.tensor(starts), *options(starts[0]), generators))
        return
    texts, batches = {}, {}
    for i, start in enumerate(starts):
        batches.setdefault(len(start), []).append(i)        # starts of one length are a batch
    for rows in batches.values():
        ids = list(generate(model, torch.tensor([starts[i] for i in rows]), *options(starts[rows[0]]),
                            [generators[i] for i in rows]))
        texts |= {i: torch.stack(ids)[:, k].tolist() for k, i in enumerate(rows)}
    yield from (texts[i] for i in range(len(starts)))


def sample_token(logits, temperature, top_k, top_p, n_vocab=None, generator=None):
    """One token id for each row of logits (B, V): (B,).  See generate()."""
    if temperature == 0:
        return logits[:, :n_vocab].argmax(-1)
    p = probabilities(logits[:, :n_vocab], temperature, top_k, top_p)
    if isinstance(generator, list):
        return torch.cat([torch.multinomial(row, 1, generator=g) for row, g in zip(p, generator, strict=True)])
    return torch.multinomial(p, 1, generator=generator)[:, 0]


def probabilities(logits, temperature, top_k, top_p):
    """The probabilities (B, V) by which generate() samples a token, from logits (B, V)."""
    if temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    logits = (logits - logits.amax(-1, keepdim=True)) / max(temperature, 1e-30)     # at most 0: no overflow to nan
    if 0 < top_k < logits.shape[-1]:
        logits[logits < logits.topk(top_k).values[:, -1:]] = -torch.inf
    p = logits.softmax(-1)
    if top_p < 1:
        ranked, order = p.sort(descending=True)
        ranked[ranked.cumsum(-1) - ranked >= top_p] = 0                     # the first token always stays
        p = torch.zeros_like(p).scatter_(1, order, ranked / ranked.sum(-1, keepdim=True))
    return p


# cellular automata ----------------------------------------------------------------------------------------------------------

@torch.no_grad()
def reapply(model, x, temperature=0, top_k=0, top_p=1.0, n_vocab=None, generator=None):
    """One pass of a language cellular automaton over x (B, T), T of any length: every token is replaced at once by a sample
    from a bidirectional model's prediction of it, given its neighbours on both sides.  Returns (B, T).

    Source: "Run with centered model (language cellular automaton)", https://github.com/jloveric/language-interpolation"""
    logits = model.infill(x.to(next(model.parameters()).device))                # (B, T, V)
    return sample_token(logits.float().cpu().flatten(0, 1), temperature, top_k, top_p, n_vocab, generator).view(x.shape)


def automaton(model, ids, passes, temperature=0, top_k=0, top_p=1.0, n_vocab=None, generator=None):
    """Yields (ids, None) for the text ids, a list, and for the result of each pass.  Without randomness a text that repeats
    repeats forever: the last that is yielded is then (ids, the number of the earlier pass with this text)."""
    seen = {}
    for i in range(passes + 1):
        if i:
            ids = reapply(model, torch.tensor([ids]), temperature, top_k, top_p, n_vocab, generator)[0].tolist()
        earlier = seen.get(tuple(ids)) if temperature == 0 or top_k == 1 else None
        yield ids, earlier
        if earlier is not None:
            return
        seen[tuple(ids)] = i


# speed ----------------------------------------------------------------------------------------------------------------------

def benchmark(model, prompt, count, temperature=0, top_k=0, top_p=1.0, n_vocab=None, most=200):
    """Times generation from prompt (B, T) with the options of generate().  Returns a dict:

    'texts': B.  'first': seconds to the first token.  'rate': tokens/s of all texts after it.  'growth': the cost of the last
    1,000 tokens over that of the first 1,000 (None below 2,000 tokens).  'recompute': tokens/s over at most `most` tokens
    without the model's step() (None if it has none, or `most` is 0)."""
    def timed(count, **options):
        start, times = time.perf_counter(), []
        for _ in generate(model, prompt, count, temperature, top_k, top_p, n_vocab, **options):
            times.append(time.perf_counter() - start)
            start = time.perf_counter()
        return times
    timed(2)        # warm-up
    first, *times = timed(count)
    B = len(prompt)
    result = {'texts': B, 'first': first, 'rate': B * len(times) / sum(times) if times else B / first, 'growth': None,
              'recompute': None}
    if len(times) >= 2000:
        result['growth'] = statistics.median(times[-1000:]) / statistics.median(times[:1000])
    if model.step and most:
        times = timed(min(count, most), recompute=True)
        result['recompute'] = B * len(times) / sum(times)
    return result


def describe(result):
    """The result of benchmark() in a line."""
    line = f'first token after {result["first"] * 1e3:.1f} ms, then {result["rate"]:,.1f} tokens/s'
    line += f' of {result["texts"]} texts' * (result['texts'] > 1)
    if result['recompute']:
        line += f'; {result["recompute"]:,.0f} tokens/s without step() (x {result["rate"] / result["recompute"]:.1f})'
    if result['growth']:
        line += f'; a token of the last 1,000 costs {result["growth"]:.2f} times one of the first 1,000'
    return line
