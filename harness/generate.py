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
    prompt = prompt.to(next(model.parameters()).device)
    state, new, text = None, prompt, prompt
    if getattr(model, 'step', None) and not reread:
        state = model.init_state(len(prompt))
    for _ in range(count):
        if state is not None:
            logits, state = model.step(new, state)                          # (B, V)
        else:
            T, M = model.config.block_size, getattr(model, 'memory', 0)
            text = text[:, -(T + M):]
            logits = model(text if text.shape[1] == T + M else text[:, -T:])[0][:, -1]     # (B, V)
        new = draw(logits.float().cpu(), temperature, top_k, top_p, n_vocab, generator)[:, None].to(prompt.device)
        text = torch.cat([text, new], dim=1) if state is None else text
        yield new[:, 0]


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
