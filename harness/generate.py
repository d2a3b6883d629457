"""Generation: token ids in, token ids out, whatever the architecture."""

import torch


@torch.no_grad()
def generate(model, prompt, count, temperature=1.0, top_k=0, top_p=1.0, n_vocab=None, generator=None):
    """Yields `count` times a (B,) tensor of token ids, continuing prompt (B, T), T >= 1.

    temperature 0 is greedy; top_k 0 keeps all tokens; top_p keeps the likeliest tokens that together reach it.
    n_vocab: ids from here on do not exist (a padded vocabulary) and are never drawn.  generator: of the CPU, which
    does the drawing, so a seed means the same on every device.
    Uses the model's step() where it has one; else the last block_size tokens are read anew for every token."""
    prompt = prompt.to(next(model.parameters()).device)
    state, new, text = None, prompt, prompt
    if getattr(model, 'step', None):
        state = model.init_state(len(prompt))
    for _ in range(count):
        if state is not None:
            logits, state = model.step(new, state)                          # (B, V)
        else:
            text = text[:, -model.config.block_size:]
            logits = model(text)[0][:, -1]                                  # (B, V)
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
    return torch.multinomial(p, 1, generator=generator)[:, 0]
