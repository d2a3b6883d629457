"""
Speculative decoding: a small model drafts tokens one by one, and a large one reads them all at once.

A step of a large model on a CPU costs the reading of its weights, so five tokens at once cost little more than one.  A drafted
token x is accepted with probability min(1, p(x) / q(x)), where p and q are the probabilities of the large and the small model;
the first that is not accepted is replaced by a sample of max(0, p - q), normalised.  Then every token is a sample of p.

Source: Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding", arXiv 2211.17192; Chen et al. 2023,
arXiv 2302.01318.  They undo rejected tokens in a key-value cache.  Here the state of any architecture is copied before it reads
a draft; after a rejection the copy that has not read it is kept, and the accepted tokens are read again with the next draft.

n tokens at a time   V vocabulary
"""

import statistics
import time

import torch
from torch.utils import _pytree as pytree

from harness import UserError
from harness.generate import generate, probabilities, sample_token

DRAFTED = 4         # tokens at a time
UNREAD = 16         # with more tokens that it has to read again, the old state reads them before it is copied


def require_text(models, names):
    """Raises UserError if one of the models cannot take part."""
    for name, model in zip(names, models, strict=True):
        if model.modality != 'text' or not model.step:
            raise UserError(f'--draft: {name} does not write a text by step(), token after token: name another run')


@torch.no_grad()
def speculate(model, draft, prompt, count, temperature=1.0, top_k=0, top_p=1.0, n_vocab=None, generator=None):
    """Yields tensors (n,), 1 <= n <= DRAFTED + 1, of together `count` ids that continue prompt (1, T), T >= 1, as
    generate.generate() samples them, and with the same options.  Both models need step() and must have one tokenizer."""
    options, where, n_vocab = (temperature, top_k, top_p), prompt.device, n_vocab or model.config.vocab_size

    def distributions(logits):
        return probabilities(logits[..., :n_vocab].float().cpu(), *options)
    logits, state = model.step(prompt, model.init_state(1))
    draft_state = draft.init_state(1)
    accepted = sample_token(logits.float().cpu(), *options, n_vocab, generator)                             # (1,)
    # what each state has not read of the text so far: it grows for the model when a draft is rejected
    unread = accepted[None].to(where)                                                                       # (1, n)
    draft_unread = torch.cat([prompt, unread], dim=1)
    yield accepted
    count -= 1
    while count > 0:
        drafted, q = torch.empty(1, 0, dtype=torch.long), []
        for i in range(min(DRAFTED, count - 1)):
            if i == 0:
                logits, draft_state = draft.step(draft_unread, draft_state)
                next_state = fork(draft, draft_state)
            else:
                logits, next_state = draft.step(drafted[:, -1:].to(where), next_state)
            q.append(distributions(logits)[0])                                                              # (V,)
            drafted = torch.cat([drafted, torch.multinomial(q[-1], 1, generator=generator)[None]], dim=1)
        if unread.shape[1] > UNREAD:
            _, state = model.step(unread[:, :-1], state, every=True)
            unread = unread[:, -1:]
        logits, next_state = model.step(torch.cat([unread, drafted.to(where)], dim=1), fork(model, state), every=True)
        accepted, rejected = judge(drafted[0], q, distributions(logits[0, unread.shape[1] - 1:]), generator)
        yield accepted
        new = accepted[None].to(where)
        if rejected:
            unread = torch.cat([unread, new], dim=1)
        else:
            state, unread = next_state, new[:, -1:]
        draft_unread = new if q else torch.cat([draft_unread, new], dim=1)
        count -= len(accepted)


def judge(drafted, q, p, generator):
    """drafted: (n,) ids.  q: n tensors (V,), the probabilities that they were sampled by.  p: (n + 1, V), those of the large
    model before and after each.  Returns the accepted ids and one more, and whether any was rejected."""
    for i, x in enumerate(drafted.tolist()):
        if p[i, x] < q[i][x] and torch.rand((), generator=generator) * q[i][x] >= p[i, x]:
            rest = (p[i] - q[i]).clamp(min=0)
            rest = rest if rest.sum() > 0 else p[i]         # by rounding alone
            return torch.cat([drafted[:i], torch.multinomial(rest, 1, generator=generator)]), True
    return torch.cat([drafted, torch.multinomial(p[-1], 1, generator=generator)]), False


def fork(model, state):
    """A copy of a state of step(), which steps from the other do not change."""
    if model.fork:
        return model.fork(state)
    return pytree.tree_map(lambda part: part.clone() if isinstance(part, torch.Tensor) else part, state)


def state_bytes(model):
    """The size of a state of step() of one text."""
    return sum(t.nbytes for t in pytree.tree_leaves(model.init_state(1)) if isinstance(t, torch.Tensor))


@torch.no_grad()
def benchmark_draft(model, draft, prompt, count, temperature=0, top_k=0, top_p=1.0, n_vocab=None, repeats=5):
    """Times generation from prompt (1, T) without and with the draft, in turn, after the first token.  Returns a dict: medians
    of tokens/s, 'without' and 'with', and 'tokens a step' of the model, at most DRAFTED + 1."""
    options, without, together, rounds = (temperature, top_k, top_p, n_vocab), [], [], 0

    def rate(parts):
        """(tokens/s after the first part, the number of parts after it)."""
        next(parts)
        start, sizes = time.perf_counter(), [len(part) for part in parts]
        return sum(sizes) / (time.perf_counter() - start), len(sizes)
    for seed in range(-1, repeats):         # the first is a warm-up
        generators = [torch.Generator().manual_seed(abs(seed)) for _ in range(2)]
        alone = rate(generate(model, prompt, count + 1, *options, generators[0]))[0]
        drafted, n = rate(speculate(model, draft, prompt, count + 1, *options, generators[1]))
        if seed >= 0:
            without.append(alone)
            together.append(drafted)
            rounds += n
    return {'without': statistics.median(without), 'with': statistics.median(together),
            'tokens a step': count * repeats / rounds}


def describe_draft(found):
    """The result of benchmark_draft() in a line."""
    return (f'{found["with"]:,.1f} tokens/s with the draft, {found["without"]:,.1f} without '
            f'(x {found["with"] / found["without"]:.2f}); {found["tokens a step"]:.2f} tokens for each step of the model, '
            f'of at most {DRAFTED + 1}')
