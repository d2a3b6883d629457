"""clip.py: against transformers' CLIPModel, its loss by the definition and over several processes."""

import math

import pytest
import torch

from clip import Config, Model
from tests.models.test_contract import example_batch, in_two_processes, perturb, tiny_model
from tests.models.test_published import patches, theirs


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """(folder, model) of a small CLIP of transformers, whose towers differ in every size."""
    folder = tmp_path_factory.mktemp('clip')
    text = {'vocab_size': 40, 'hidden_size': 24, 'intermediate_size': 96, 'num_hidden_layers': 3, 'num_attention_heads': 4,
            'max_position_embeddings': 12, 'bos_token_id': 38, 'eos_token_id': 39, 'pad_token_id': 39}
    vision = {'hidden_size': 32, 'intermediate_size': 128, 'num_hidden_layers': 2, 'num_attention_heads': 8, 'image_size': 12,
              'patch_size': 4}
    return folder, theirs('CLIPModel', folder, text_config=text, vision_config=vision, projection_dim=16)


def captions(lengths, T, end):
    """Random captions (B, T) of these lengths with their ends, -1 after them."""
    y = torch.randint(end, (len(lengths), T))
    for row, n in zip(y, lengths, strict=True):
        row[n - 1], row[n:] = end, -1
    return y


@pytest.mark.parametrize('block_size', [12, 9])
def test_published_weights_give_the_published_similarities(published, block_size):
    folder, theirs = published
    ours = Model.from_pretrained(str(folder), block_size=block_size).eval()
    images, y = torch.randn(5, 3, 12, 12), captions((9, 3, 5, 7, 2), 9, 39)
    expected = theirs(input_ids=torch.where(y < 0, 39, y), pixel_values=images, return_loss=True)
    output, loss = ours(patches(images, 4), y)
    torch.testing.assert_close(output[:, 0] @ output[:, 1].T, expected.logits_per_image, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(loss, expected.loss, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.embed_texts(y), expected.text_embeds, atol=1e-4, rtol=1e-4)


def tiny(**more):
    return perturb(tiny_model('clip', more))


def test_loss_by_its_definition():
    """Cosines times the scale, from which the caption of each picture and the picture of each caption is to be found.  A scale
    that an optimizer moved too far is 100, and can fall again."""
    model = tiny()
    x, y = example_batch(model)
    a, b = model.embed_images(x), model.embed_texts(y)
    torch.testing.assert_close(a.norm(dim=1), torch.ones(6))
    losses = []
    for i in range(6):
        for row in ([a[i] @ b[j] for j in range(6)], [a[j] @ b[i] for j in range(6)]):
            losses.append(-(torch.stack(row) * model.log_scale.exp()).log_softmax(0)[i])
    torch.testing.assert_close(model(x, y)[1], torch.stack(losses).mean())
    assert Model(Config.tiny()).metrics()['scale'] == pytest.approx(1 / 0.07)
    model.log_scale.data.fill_(9)
    model(x, y)[1].backward()
    assert model.metrics()['scale'] == pytest.approx(100) and model.log_scale.grad.abs() > 0


def test_captions_are_read_up_to_their_ends():
    model, y = tiny(), captions((16, 5, 2), 16, 16)
    found = model.embed_texts(y)
    torch.testing.assert_close(model.embed_texts(y[1:, :5]), found[1:])
    for t in range(5):
        changed = y.clone()
        changed[1, t] = (y[1, t] + 1) % 16
        assert not torch.allclose(model.embed_texts(changed)[1], found[1], atol=1e-4), f'token {t} is ignored'


def test_a_resnet_reads_the_picture_that_was_cut_into_patches():
    for channels, shape, P in ((3, (2, 2), 4), (1, (3, 3), 2), (3, (4, 4), 20), (3, (2, 8), 4), (1, (9, 1), 10)):
        model = tiny(tower='resnet18', n_embd=4, source_size=math.prod(shape), features=channels * P * P,
                     rows=0 if shape[0] == shape[1] else shape[0])
        x = torch.randn(2, channels, *(n * P for n in shape))
        expected = torch.nn.functional.normalize(model.image(x), dim=1)
        torch.testing.assert_close(model.embed_images(patches(x, P)), expected)
        assert isinstance(model.image.maxpool, torch.nn.MaxPool2d) == (P >= 10)         # of 80 and 90 pixels, not of 8, 6 or 32
    with pytest.raises(ValueError, match='rows=3'):
        tiny(tower='resnet18', source_size=16, rows=3)


TOWERS = 'vit', 'resnet18'


def step(model, net, batch):
    """What a step of training computes of a batch: the loss, the gradients, and the running statistics of batch norm."""
    loss = net(*batch)[1]
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters()), *model.buffers()]


def step_of_a_share(rank):
    """Of this process's share of a batch, averaged over the processes as DDP does, for each tower."""
    found = {}
    for tower in TOWERS:
        model = tiny(tower=tower).train()
        net = torch.nn.parallel.DistributedDataParallel(model)
        found[tower] = step(model, net, [part.chunk(2)[rank] for part in example_batch(model)])
        with torch.no_grad():           # of one process alone: nobody waits for the other
            if not rank:
                model.eval()(*example_batch(model))
    return found


def test_the_batch_is_that_of_all_processes(tmp_path):
    """Also that of batch norm, whose running statistics are the same in all of them."""
    shares = in_two_processes(step_of_a_share, tmp_path)
    for tower in TOWERS:
        model = tiny(tower=tower).train()
        own = step(model, model, example_batch(model))
        for found in shares:
            torch.testing.assert_close(found[tower], own, atol=1e-4, rtol=1e-3)
        half = model(*(part[:3] for part in example_batch(model)))[1]
        assert abs(half - own[0]).item() > 0.01
