"""--init_from: a setting that differs from the checkpoint's is refused by name, or does not change the function."""

import dataclasses
import inspect
import re

import pytest
import torch
from conftest import ABOUT

from harness import UserError, checkpoint
from harness.arch import complete, load_arch
from harness.runs import from_checkpoint, with_vocabulary
from tests.models.test_contract import ARCHS, example_batch


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """saved(arch) -> (Architecture, its tiny model, the file that holds it)."""
    made = {}

    def save(name):
        if name not in made:
            arch, path = load_arch(name), tmp_path_factory.mktemp('saved') / f'{name}.pt'
            torch.manual_seed(0)
            model = complete(arch.Model(arch.Config.tiny())).eval()
            for p in model.parameters():
                p.data += 0.1 * torch.randn_like(p)
            checkpoint.save(path, {'arch': name, 'config': dataclasses.asdict(model.config), 'model': model.state_dict(),
                                   'step': 1, **ABOUT})
            made[name] = arch, model, path
        return made[name]
    return save


def others(arch, config, field):
    """Other values of a setting that the Config accepts: half and twice a number, and the words in the model file."""
    was = getattr(config, field)
    if isinstance(was, str):
        tried = re.findall(r"'(\w+)'", inspect.getsource(inspect.getmodule(arch.Config)))
    else:
        tried = [not was] if isinstance(was, bool) else [was * 2, type(was)(was / 2)] if isinstance(was, (int, float)) else \
            [(*was, *was[-1:])]
    for value in dict.fromkeys(tried):
        try:
            if dataclasses.replace(config, **{field: value}) != config:
                yield value
        except ValueError:
            pass


@torch.no_grad()
@pytest.mark.parametrize(('name', 'field'), [(name, f.name) for name in ARCHS
                                             for f in dataclasses.fields(load_arch(name).Config)])
def test_a_setting_is_refused_or_changes_nothing(saved, name, field):
    arch, model, path = saved(name)
    for value in others(arch, model.config, field):
        try:
            new, _ = from_checkpoint(arch, str(path), {field: value})
        except UserError as e:
            assert re.search(rf'\b{field}\b', str(e)), (value, str(e))
            continue
        assert getattr(new.config, field) == value
        if (name, field) == ('vit', 'block_size'):      # its positions are interpolated
            continue
        x, _ = example_batch(complete(new).eval())
        torch.testing.assert_close(new(x)[0], model(x)[0], msg=str(value))


@pytest.mark.parametrize('name', [n for n in ARCHS if load_arch(n).Model.modality == 'text'])
@pytest.mark.parametrize('size', [9, 17], ids=['another size', 'the same size'])
def test_a_new_vocabulary(saved, name, size):
    """Embeddings and head are new, and nothing else."""
    arch, model, _ = saved(name)
    if name == 'highorder':
        model.config = dataclasses.replace(model.config, input_segments=17)
    new, old = with_vocabulary(arch, model, size).state_dict(), model.state_dict()
    changed = {k for k in old if not (new[k].shape == old[k].shape and torch.equal(new[k], old[k]))}
    assert changed and all(size in new[k].shape for k in changed)
    assert any('wte' in k or 'net' in k or 'embed' in k for k in changed) and len(changed) < len(old)
