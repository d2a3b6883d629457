"""dvae.py and dalle.py: each formula against its definition, what each token sees, and the VAE that a run is built from."""

import dataclasses
import math
import re

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from conftest import save, sentence

import dalle
import dvae
from dvae import kl_to_uniform, perplexity, straight_through
from harness import UserError, checkpoint, shard
from harness.arch import build, load_arch
from harness.generate import generate
from tests.models.test_contract import in_two_processes, perturb, tiny_model

T, S = dalle.Config.tiny().block_size, dalle.Config.tiny().source_size


def tiny(module, **more):
    return perturb(tiny_model(module.__name__, more))


def built(changes):
    return build(load_arch('dalle'), dataclasses.asdict(dalle.Config.tiny()) | changes)


@pytest.fixture
def batch():
    """Patches, and captions of 5, 3 and 1 tokens."""
    torch.manual_seed(1)
    y = torch.randint(17, (3, T))
    y[1, 3:], y[2, 1:] = -1, -1
    return torch.randn(3, S, 4), y


# the discrete VAE ------------------------------------------------------------------------------------------------------------

def test_kl_and_perplexity_by_brute_force(batch):
    """The perplexity of a model is that of the last evaluation: what is trained on does not count."""
    logits = torch.randn(2, 3, 5, dtype=torch.float64)
    q, K = logits.softmax(-1), 5
    expected = sum(q[b, s, k] * math.log(q[b, s, k] / (1 / K)) for b in range(2) for s in range(3) for k in range(K)) / 6
    assert kl_to_uniform(logits).item() == pytest.approx(expected.item())
    assert kl_to_uniform(torch.zeros(4, 7)).item() == pytest.approx(0, abs=1e-6)
    assert kl_to_uniform(torch.tensor([100.0, 0, 0, 0])).item() == pytest.approx(math.log(4))       # one code
    for counts, expected in (([3, 3, 3, 0], 3), ([5, 0, 0], 1), ([0, 0], 1), ([1, 3], (1 / 4) ** -0.25 * (3 / 4) ** -0.75)):
        assert perplexity(torch.tensor(counts)) == pytest.approx(expected)
    model = tiny(dvae)
    counts = model.tokens(batch[0]).flatten().bincount(minlength=11)
    model(batch[0][:2])
    model(batch[0][2:])
    assert model.metrics()['perplexity'] == pytest.approx(perplexity(counts))
    model.train()(batch[0])
    assert model.metrics() == {'perplexity': 1.0}


def test_straight_through():
    """The nearest code, and the gradient as if nothing had been rounded."""
    h, codebook = torch.randn(2, 6, 3, requires_grad=True), torch.randn(5, 3)
    z, codes = straight_through(h, codebook)
    assert torch.equal(codes, (h[..., None, :] - codebook).square().sum(-1).argmin(-1))
    torch.testing.assert_close(z, codebook[codes])
    weights = torch.randn_like(z)
    gradient, = torch.autograd.grad((z * weights).sum(), h)
    assert torch.equal(gradient, weights)


def test_loss_of_a_vae(batch):
    x, _ = batch
    model = tiny(dvae, kl=2.0, anneal=8)
    model.steps += 4
    output, loss = model(x, x)
    h = model.encode(x)
    torch.testing.assert_close(model.render(h.argmax(-1)), output)
    torch.testing.assert_close(loss, ((output - x) ** 2).mean() / (2 * dvae.NOISE ** 2) + 0.5 * 2.0 * kl_to_uniform(h) / 4)
    vq = tiny(dvae, quantizer='vq')
    (output, loss), h = vq(x, x), vq.encode(x)
    distance = (h - vq.codebook(vq.tokens(x))).square().mean()
    torch.testing.assert_close(loss, ((output - x) ** 2).mean() / (2 * dvae.NOISE ** 2) + (1 + vq.config.commitment) * distance)
    z, extra, codes = vq.quantize(h.detach())       # the codes are drawn to the vectors, with weight 1
    gradient, = torch.autograd.grad(extra, vq.codebook.weight)
    expected = torch.zeros_like(gradient).index_add_(0, codes.flatten(), (2 * (z - h) / h.numel()).flatten(0, 1))
    torch.testing.assert_close(gradient, expected)


def test_unused_codes_move_to_distant_outputs(batch):
    """After 3 steps without use, and to what is far from every code; the others stay."""
    model = tiny(dvae, quantizer='vq', restart=3).train()
    near = batch[0][:1].expand(64, -1, -1).clone()
    near[0] += 40 * torch.randn_like(near[0])               # one image of 64 is unlike the others
    for step in range(4):
        codes, before = model.tokens(near), model.codebook.weight.detach().clone()
        model(near, near)
        unused = torch.ones(11, dtype=torch.bool).index_fill(0, codes.unique(), False)
        if step < 3:
            assert torch.equal(model.codebook.weight, before) and (model.unused[unused] == step + 1).all()
    moved = (model.codebook.weight != before).any(1)
    assert torch.equal(moved, unused) and unused.any()
    outputs, distances = model.encode(near), torch.cdist(model.encode(near), before).amin(-1)
    came = (model.codebook.weight[moved][:, None] - outputs.flatten(0, 1)).norm(dim=-1).min(1)
    assert (came.values < 1e-4).all() and distances.flatten()[came.indices].mean() > 5 * distances.mean()
    assert (model.unused[model.tokens(near).unique()] == 0).all()
    again = tiny(dvae, quantizer='vq', restart=3)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.unused, model.unused)
    count = model.unused.clone()
    model.eval()(near, near)
    assert torch.equal(model.unused, count)


def codes_after_steps(rank):
    """Of two processes, of which each trains on images of its own."""
    model = tiny(dvae, quantizer='vq', codes=40, restart=2).train()
    torch.manual_seed(rank)
    for _ in range(4):
        x = torch.randn(3, S, 4)
        model(x, x)
    return model.codebook.weight.detach(), model.unused


def test_all_processes_have_the_same_codes(tmp_path):
    (one, unused), (other, too) = in_two_processes(codes_after_steps, tmp_path)
    assert torch.equal(one, other) and torch.equal(unused, too)
    assert not torch.equal(one, tiny(dvae, quantizer='vq', codes=40, restart=2).codebook.weight)


def test_codes_that_move_are_not_split_over_processes():
    with pytest.raises(UserError, match='weight changes in forward passes'):
        shard.split(tiny(dvae, quantizer='vq', restart=2), torch.device('cpu'), 2)


def test_local_encoder_sees_its_patch_alone(batch):
    x, other = batch[0], batch[0].clone()
    other[:, 4] += 1
    for local, expected in ((True, {4}), (False, set(range(9)))):
        change = (tiny(dvae, local=local).encode(other) - tiny(dvae, local=local).encode(x)).abs().amax((0, 2))
        assert set(change.nonzero().flatten().tolist()) == expected


def test_temperature_falls_and_the_samples_become_codes(batch):
    """From a mixture of all codes to one of them; the step is in the checkpoint, so a resumed run goes on from there."""
    model = tiny(dvae, anneal=10, temperature=0.001).train()
    distances = []
    for _ in range(12):
        z, _, _ = model.quantize(model.encode(batch[0]))
        distances.append(torch.cdist(z.flatten(0, 1), model.codebook.weight).min(1).values.mean().item())
        model(batch[0], batch[0])
    assert distances[0] > 0.5 and max(distances[10:]) < 0.01
    assert model.state_dict()['steps'] == 12 and 'counts' not in model.state_dict()
    again = tiny(dvae, anneal=10)
    again.load_state_dict(model.state_dict())
    assert again.steps == 12


# the transformer -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('kind', dalle.ATTENTION)
@pytest.mark.parametrize('kernel', [1, 3, 5])
def test_masks_by_their_definition(kind, kernel):
    text, side = 2, 4
    found = dalle.attention_mask(kind, text, side ** 2, kernel)
    assert found.shape == (text + side ** 2, text + side ** 2)
    for q in range(len(found)):
        for k in range(len(found)):
            (r, c), (row, column) = divmod(q - text - 1, side), divmod(k - text - 1, side)
            near = {'full': True, 'row': r == row, 'column': c == column,
                    'conv': max(abs(r - row), abs(c - column)) <= kernel // 2}[kind]
            assert found[q, k] == (k <= q and (k <= text or near)), (q, k)


@pytest.mark.parametrize('more', [{'attention': kind} for kind in ('full', 'row', 'column', 'conv', 'row+column')] +
                         [{'neighbours': True, 'codebook': True, 'rotary': True}], ids=str)
def test_causality_and_step(batch, more):
    """The loss of a token does not depend on what comes after it; step() gives the same losses."""
    model, (_, y) = tiny(dalle, **more), batch
    codes, y = torch.randint(11, (3, S)), y[:1].expand(3, -1)
    whole, both = model.losses(y, codes), torch.cat([y, codes], 1)
    for k in range(T + S):
        changed = both.clone()
        changed[:, k] = (both[:, k] + 1) % (17 if k < T else 11)
        moved = (model.losses(changed[:, :T], changed[:, T:]) - whole).abs().amax(0)
        assert torch.equal(moved[:k], torch.zeros(k)) and (moved[k:max(k + 2, T + 1)] > 1e-5).all()
    logits, state = model.step(y, model.init_state(3))
    for k in range(S):
        torch.testing.assert_close(F.cross_entropy(logits, codes[:, k], reduction='none'), whole[:, T + k])
        logits, state = model.step(codes[:, k, None], state) if k < S - 1 else (None, None)


def test_neighbours_by_their_definition():
    torch.manual_seed(0)
    blocks = tiny_model('dalle', {'neighbours': True}).h
    assert not any(block.neighbours.weight.any() for block in blocks)       # they do nothing at the start of a training
    side, x, found = 4, torch.randn(2, 15, 3), dalle.Neighbours(3, 4)
    nn.init.normal_(found.weight)
    w = dict(zip(found.offsets, found.weight, strict=True))
    assert [*w] == [1, 2, side - 1, side, side + 1]         # left, and above the next token and around it
    expected = torch.stack([x[:, i] + sum(w[k] * x[:, i - k] for k in w if i >= k) for i in range(15)], dim=1)
    torch.testing.assert_close(found(x), expected)
    torch.testing.assert_close(found(x, past=14), expected[:, 14:])


def test_rotation_tells_how_tokens_lie_to_each_other():
    """By complex numbers: a pair is turned by its frequency times the row or column, and a caption by nothing."""
    T, S, D, side = 3, 16, 8, 4
    q, k = torch.randn(2, D)
    cos, sin = dalle.turns(T, S, D)
    turned = [dalle.rotate(x.expand(1, 1, T + S, D), cos, sin, 'half')[0, 0] for x in (q, k)]
    scores, frequencies = turned[0] @ turned[1].T, [1, 20 ** -0.5]                          # (T + S, T + S)
    places = [(0, 0)] * (T + 1) + [divmod(i, side) for i in range(S - 1)]
    pairs = [torch.complex(x[:D // 2], x[D // 2:]) for x in (q, k)]
    for i, (r, c) in enumerate(places):
        for j, (row, column) in enumerate(places):
            by = torch.tensor([(r - row) * f for f in frequencies] + [(c - column) * f for f in frequencies])
            expected = (pairs[0] * torch.exp(1j * by) * pairs[1].conj()).real.sum()
            torch.testing.assert_close(scores[i, j], expected, atol=1e-5, rtol=1e-5)


def test_attention_rotates_images_and_not_captions(batch):
    plain, model = tiny(dalle), tiny(dalle, rotary=True)
    model.load_state_dict(plain.state_dict())
    codes, y = torch.randint(11, (3, S)), batch[1][:1].expand(3, -1)
    before, after = plain.losses(y, codes), model.losses(y, codes)
    torch.testing.assert_close(after[:, :T + 2], before[:, :T + 2])         # of a caption, and after the token at (0, 0)
    assert ((after - before)[:, T + 3:].abs().amax(0) > 1e-5).all()


def test_tokens_are_vectors_of_the_codebook_and_places():
    model, h, every = tiny(dalle, codebook=True), torch.randn(2, 16), torch.zeros(1, S, dtype=torch.long)
    E = model.vae.codebook.weight
    vectors = (E - E.mean(0)) / E.std()
    torch.testing.assert_close(model.scores(h), torch.einsum('bc,ec,ke->bk', h, model.image_head.weight, vectors))
    codes, at = torch.tensor([[3, 7]]), torch.tensor([0, 1])
    torch.testing.assert_close(model.place(codes, at)[0], vectors[[3, 7]] @ model.image.weight.T + model.row.weight[0] +
                               model.column.weight[:2])
    model = tiny(dalle)
    found = model.place(every, torch.arange(S)) - model.image(every)
    torch.testing.assert_close(found.view(3, 3, -1), model.row.weight[:, None] + model.column.weight)


def test_guidance_adds_to_what_the_caption_adds(batch):
    model, (_, y) = tiny(dalle), batch
    codes = torch.randint(11, (3, 4))

    def logits(guidance, y):
        model.config.guidance = guidance
        _, state = model.step(y, model.init_state(3))
        return model.step(codes, state)[0]
    with_caption, without = logits(1.0, y), logits(1.0, torch.full_like(y, -1))
    torch.testing.assert_close(logits(3.0, y), without + 3 * (with_caption - without))
    torch.testing.assert_close(logits(0.0, y), without)


def test_captions_are_left_out_in_training(batch):
    model, (x, y) = tiny(dalle, caption_dropout=0.5), batch
    x, y = x[:1].expand(400, -1, -1), y[:1].expand(400, -1)
    torch.manual_seed(0)
    losses = model.train()(x, y)[0]
    left_out = (losses[:, :T] == 0).all(1)
    assert 160 < left_out.sum() < 240
    for rows, given in ((left_out, torch.full_like(y, -1)), (~left_out, y)):
        torch.testing.assert_close(losses[rows], model.eval()(x, given)[0][rows])


def test_weighted_loss(batch):
    """7/8 of the images and 1/8 of the captions, whose tokens behind the end are not scored; each caption counts as much."""
    model, (x, y) = tiny(dalle), batch
    losses, loss = model(x, y)
    words = sum(losses[i, :n].mean() for i, n in enumerate((5, 3, 1))) / 3
    torch.testing.assert_close(loss, words / 8 + losses[:, T:].mean() * 7 / 8)
    assert (losses[1, 3:T] == 0).all() and (losses[2, 1:T] == 0).all()
    torch.testing.assert_close(model(x, y[2:, :1].expand(3, -1))[0][2], losses[2])          # a batch of shorter captions
    assert model.config.text_weight == 1 / 8


def test_likeliest_image_is_written_greedily(batch):
    model, (_, y) = tiny(dalle), batch
    codes = torch.stack([*generate(model, y, S, temperature=0)], 1)
    losses = model.losses(y, codes)[:, T:]
    for k in range(S):
        others = torch.stack([model.losses(y, codes.index_fill(1, torch.tensor(k), c))[:, T + k] for c in range(11)])
        torch.testing.assert_close(others.amin(0), losses[:, k])
    assert model.render(codes).shape == (3, S, 4)


# the VAE of a run ------------------------------------------------------------------------------------------------------------

def test_a_run_is_built_from_its_vae_and_no_other(batch, tmp_path):
    vae, (x, y) = tiny(dvae, codes=7), batch
    save(vae, tmp_path / 'vae')
    model = perturb(built({'vae': str(tmp_path / 'vae')})).eval()
    save(model, tmp_path / 'run')
    again, content = checkpoint.load_model(tmp_path / 'run')
    assert model.config.codes == 7 and not any(k.startswith('vae.') for k in content['model'])
    assert torch.equal(again(x, y)[0], model(x, y)[0])
    model.train()
    assert torch.equal(model.vae.tokens(x), vae.tokens(x)) and not any(p.requires_grad for p in model.vae.parameters())
    (tmp_path / 'vae').rename(tmp_path / 'right')
    assert re.search('no checkpoint.*vae', sentence(checkpoint.load_model, tmp_path / 'run'))
    save(perturb(vae), tmp_path / 'vae')
    assert re.search(f"vae='.*' has changed.*{model.config.vae_hash}", sentence(checkpoint.load_model, tmp_path / 'run'))


@pytest.mark.parametrize('module, more, changes, expected', [
    (dvae, {'features': 8}, {}, 'features=8.* 4'), (dvae, {'block_size': 16}, {}, 'block_size=16.* 9'),
    (dalle, {}, {}, "run of arch='dalle'"), (dvae, {}, {'vae': 'nowhere'}, 'nowhere'),
    (dvae, {}, {'vae': 'random', 'source_size': 10}, 'block_size=10.*square'),
    (dvae, {}, {'vae': 'random', 'vae_hash': '0' * 16}, "vae='random' has changed.*0000")])
def test_vae_that_does_not_fit(module, more, changes, expected, tmp_path):
    save(tiny(module, **more), tmp_path)
    assert re.search(expected, sentence(built, {'vae': str(tmp_path)} | changes))
