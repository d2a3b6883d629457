"""
Speculative decoding: a small model drafts tokens one by one, and a large one reads them all at once.

A step of a large model on a CPU costs the reading of its weights, so five tokens at once cost little more than one.  A drafted
token x is accepted with probability min(1, p(x) / q(x)), where p and q are the probabilities of the large and the small model;
the first that is not accepted is replaced by a sample of max(0, p - q), normalised.  Then every token is a sample of p.

Source: Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding", arXiv 2211.17192; Chen et al. 2023,
arXiv 2302.01318.  They undo rejected tokens in a key-value cache.  Here the state of any architecture is copied before it reads
a draft; after a rejection the copy that has not read it is kept, and the accepted tokens are read again with the next draft.
"""

import statistics
import time

import torch
from torch.utils import _pytree as pytree

from harness import UserError
from harness.generate import benchmark, probabilities

DRAFTED = 4         # tokens at a time
UNREAD = 16         # accepted tokens that are read again with a draft; above it they are read alone


def require_step(models, names):
    """Raises UserError if one of the models cannot take part."""
    for name, model in zip(names, models, strict=True):
        if not model.step:
            raise UserError(f'--draft: {name} has no step(), without which a token costs a whole window: name another run')


@torch.no_grad()
def speculate(model, draft, prompt, count, temperature=1.0, top_k=0, top_p=1.0, n_vocab=None, generator=None):
    """Yields tensors (n,), 1 <= n <= DRAFTED + 1, of together `count` ids that continue prompt (1, T), T >= 1, as
    generate.generate() samples them, and with the same options.  Both models need step() and must have one tokenizer.

    At the end of its window model.py reads half of it again, here up to DRAFTED tokens earlier than generate() does."""
    n_vocab = n_vocab or min(m.config.vocab_size for m in (model, draft))
    prompt = prompt.to(next(model.parameters()).device)
    state, unread, ahead, missing = model.init_state(1), prompt, draft.init_state(1), prompt
    while count > 0:
        logits, ahead = draft.step(missing, ahead)
        trial, tokens, q = copy(ahead), [], []
        for i in range(min(DRAFTED, count - 1)):
            if i:
                logits, trial = draft.step(tokens[-1].to(prompt.device), trial)
            q.append(probabilities(logits[:, :n_vocab].float().cpu(), temperature, top_k, top_p)[0])        # (V,)
            tokens.append(torch.multinomial(q[-1], 1, generator=generator)[None])                           # (1, 1)
        if unread.shape[1] > UNREAD:
            _, state = model.step(unread[:, :-1], state)
            unread = unread[:, -1:]
        drafted = torch.cat([prompt[:, :0].cpu(), *tokens], dim=1)                                          # (1, n)
        logits, trial = model.step(torch.cat([unread, drafted.to(prompt.device)], dim=1), copy(state), every=True)
        p = logits[0, unread.shape[1] - 1:, :n_vocab].float().cpu()
        accepted, rejected = judge(drafted[0], q, probabilities(p, temperature, top_k, top_p), generator)
        yield accepted
        count -= len(accepted)
        missing = accepted[None].to(prompt.device)
        if rejected:
            unread = torch.cat([unread, missing], dim=1)
        else:
            state, unread = trial, missing[:, -1:]


def judge(drafted, q, p, generator):
    """drafted: (n,) ids.  q: n tensors (V,), the probabilities that they were sampled by.  p: (n + 1, V), those of the large
    model before and after each.  Returns the accepted ids and one more, and whether any was rejected."""
    for i, x in enumerate(drafted.tolist()):
        if p[i, x] < q[i][x] and torch.rand((), generator=generator) * q[i][x] >= p[i, x]:
            rest = (p[i] - q[i]).clamp(min=0)
            return torch.cat([drafted[:i], torch.multinomial(rest, 1, generator=generator)]), True
    return torch.cat([drafted, torch.multinomial(p[-1], 1, generator=generator)]), False


def copy(state):
    """A state of step() that another step does not change."""
    return pytree.tree_map(lambda part: part.clone() if isinstance(part, torch.Tensor) else part, state)


def benchmark_draft(model, draft, prompt, count, temperature=0, top_k=0, top_p=1.0, n_vocab=None, repeats=5):
    """Times generation from prompt (1, T) without and with the draft, in turn.  Returns a dict: medians of tokens/s, 'without'
    and 'with', and 'tokens a step' of the model, at most DRAFTED + 1."""
    options, rates, rounds = (temperature, top_k, top_p, n_vocab), ([], []), 0
    for seed in range(repeats):
        rates[0].append(benchmark(model, prompt, count, *options, most=0)['rate'])
        generator, start = torch.Generator().manual_seed(seed), time.perf_counter()
        rounds += len(list(speculate(model, draft, prompt, count, *options, generator)))
        rates[1].append(count / (time.perf_counter() - start))
    alone, together = map(statistics.median, rates)
    return {'without': alone, 'with': together, 'tokens a step': count * repeats / rounds}


def describe_draft(found):
    """The result of benchmark_draft() in a line."""
    return (f'{found["with"]:,.1f} tokens/s with the draft, {found["without"]:,.1f} without '
            f'(x {found["with"] / found["without"]:.2f}); {found["tokens a step"]:.2f} tokens for each step of the model, '
            f'of at most {DRAFTED + 1}')
