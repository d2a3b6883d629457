"""--init_from: a setting that differs from the checkpoint's is refused by name, or does not change the function."""

import contextlib
import dataclasses
import functools
import inspect
import re

import pytest
import torch
from conftest import ABOUT

from harness import UserError, checkpoint
from harness.arch import complete, load_arch
from harness.runs import from_checkpoint, with_vocabulary
from tests.models.test_contract import ARCHS, example_batch, perturb, tiny_model


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """saved(arch) -> (its tiny model, the file that holds it)."""
    @functools.cache
    def save(name):
        model, path = perturb(tiny_model(name, {})), tmp_path_factory.mktemp('saved') / f'{name}.pt'
        checkpoint.save(path, {'arch': name, 'config': dataclasses.asdict(model.config), 'model': model.state_dict(),
                               'step': 1, **ABOUT})
        return model, path
    return save


def others(config, field):
    """Other values of a setting that the Config accepts: half and twice a number, and the words in the model file."""
    was = getattr(config, field)
    words = re.findall(r"'(\w+)'", inspect.getsource(inspect.getmodule(type(config))))
    tried = {str: lambda: words, bool: lambda: [not was], int: lambda: [was * 2, was // 2], float: lambda: [was * 2, was / 2],
             dict: lambda: [{**was, 'n_types': 2}], tuple: lambda: [(*was, *was[-1:])]}[type(was)]
    for value in tried():
        with contextlib.suppress(ValueError):
            if dataclasses.replace(config, **{field: value}) != config:
                yield value


@torch.no_grad()
@pytest.mark.parametrize('name, field', [(name, f.name) for name in ARCHS for f in dataclasses.fields(load_arch(name).Config)])
def test_a_setting_is_refused_or_changes_nothing(saved, name, field):
    model, path = saved(name)
    for value in others(model.config, field):
        try:
            new, _ = from_checkpoint(load_arch(name), str(path), {field: value})
        except UserError as e:
            assert re.search(rf'\b{field}\b', str(e)), (value, str(e))
            continue
        assert getattr(new.config, field) == value
        if (name, field) != ('vit', 'block_size'):      # its positions are interpolated
            x, _ = example_batch(complete(new).eval())
            torch.testing.assert_close(new(x)[0], model(x)[0], msg=str(value))


@pytest.mark.parametrize('name', [n for n in ARCHS if load_arch(n).Model.modality in ('text', 'masked text')])
@pytest.mark.parametrize('size', [9, 17, 25], ids=['smaller', 'the same', 'larger'])
def test_a_new_vocabulary(name, size):
    """Embeddings and head are new, and nothing else."""
    model = tiny_model(name, {})
    new, old = with_vocabulary(load_arch(name), perturb(model), size).state_dict(), model.state_dict()
    changed = {k for k in old if not (new[k].shape == old[k].shape and torch.equal(new[k], old[k]))}
    # an MLP's first layer has a row for each node of each input, which are one more than the tokens
    assert changed and all(size in new[k].shape or (new[k].shape[0] % (size + 1) == 0 and 'first' in k) for k in changed)
    assert any('wte' in k or 'net' in k or 'embed' in k for k in changed) and len(changed) < len(old)
