"""SRe2L: the loss is the published one, the images obey their limits, and the set goes through the same line."""
import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rded import cli, datasets, distilled, models, observer, pipeline, recipes, sre2l

FEW = replace(recipes.RECOVERIES['digits'], iterations=5)


@pytest.fixture(scope='module')
def digits(): return datasets.load('digits', 'train')


@pytest.fixture(scope='module')
def eyes(digits):
    "Random weights, but statistics that real images left behind."
    net = models.build('conv3', 10, 16, digits.classes, seed=0)
    with torch.no_grad(): net.train()(digits.x[:300])
    return observer.get_observer([net], digits)


class PublishedHook:
    "The distance as the published code writes it."
    def __init__(self, module): self.hook = module.register_forward_hook(self.look)
    def look(self, module, input, output):
        nch = input[0].shape[1]
        mean, var = input[0].mean([0, 2, 3]), input[0].permute(1, 0, 2, 3).contiguous().reshape([nch, -1]).var(1, unbiased=False)
        self.r_feature = torch.norm(module.running_var.data - var, 2) + torch.norm(module.running_mean.data - mean, 2)


def test_recovery_is_the_published_loop(eyes):
    "Written out in normalised pixels, as there: Adam, cosine by iteration, BatchNorm distances, clipping."
    recovery, y, key = replace(FEW, jitter=(0, 0), iterations=8), torch.arange(10), 7
    net, std, mean = eyes.nets[0], eyes.nets[0].std, eyes.nets[0].mean
    hooks = [PublishedHook(m) for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    z = torch.randn(10, 3, 16, 16, generator=torch.Generator().manual_seed(key)).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.25, betas=[0.5, 0.9], eps=1e-8)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
    for _ in range(8):
        optimizer.zero_grad()
        loss = F.cross_entropy(net.body(z), y) + 0.01 * sum(h.r_feature * (10 if k == 0 else 1) for k, h in enumerate(hooks))
        loss.backward()
        optimizer.step()
        scheduler.step()
        z.data = torch.maximum(torch.minimum(z.data, (1 - mean) / std), -mean / std)
    for h in hooks: h.hook.remove()
    ours = sre2l.recover(eyes, y, recovery, key)
    theirs = ((z.detach() * std + mean) * 255).round().byte()
    assert (ours.int() - theirs.int()).abs().max() <= 2 and (ours == theirs).float().mean() > 0.99


def test_pixels_stay_where_pixels_are(eyes):
    def look(iteration, x, loss): assert -1e-6 <= x.min() and x.max() <= 1 + 1e-6
    sre2l.recover(eyes, torch.arange(10), replace(FEW, lr=5.0), watch=look)


def test_it_finds_the_class_and_the_statistics(eyes):
    losses = []
    made = sre2l.recover(eyes, torch.arange(10), replace(FEW, iterations=60), watch=lambda i, x, loss: losses.append(loss))
    assert losses[-1] < 0.85 * losses[0] and (eyes.logits(made).argmax(1) == torch.arange(10)).float().mean() > 0.8


@pytest.mark.parametrize('name', recipes.RECOVERIES)
def test_every_published_setting_runs(eyes, name):
    made = sre2l.recover(eyes, torch.arange(4), replace(recipes.RECOVERIES[name], iterations=3))
    assert made.shape == (4, 3, 16, 16) and made.dtype == torch.uint8


def test_the_seed_decides_and_nothing_else(digits, eyes):
    one, two, other = (sre2l.sre2l(digits, eyes, 2, FEW, seed=s) for s in (0, 0, 1))
    assert torch.equal(one.x, two.x) and not torch.equal(one.x, other.x)
    torch.manual_seed(123), torch.rand(9)
    assert torch.equal(sre2l.sre2l(digits, eyes, 2, FEW).x, one.x)
    assert torch.equal(sre2l.sre2l(digits, eyes, 1, FEW).x, one.x[::2])          # the first round does not know how many follow


def test_classes_are_the_data_sets_columns(digits):
    "An observer that knows the classes in another order recovers the data set's order."
    shuffled = models.build('conv3', 10, 16, digits.classes[::-1], seed=0)
    with torch.no_grad(): shuffled.train()(digits.x[:300])
    eyes = observer.get_observer([shuffled], digits)
    made = sre2l.recover(eyes, torch.arange(10), replace(FEW, iterations=60))
    assert (eyes.logits(made).argmax(1) == torch.arange(10)).float().mean() > 0.8


def test_several_networks_share_the_loss(digits, eyes):
    "The mean of two different networks' losses; the images are neither's own."
    other = models.build('resnet18_modified', 10, 16, digits.classes, seed=1)
    with torch.no_grad(): other.train()(digits.x[:300])
    alone, losses = [eyes, observer.get_observer([other], digits)], []
    made = [sre2l.recover(e, torch.arange(10), FEW, 3, watch=lambda i, x, loss: losses.append(loss)) for e in (*alone, observer.get_observer([eyes.nets[0], other], digits))]
    one, two, both = losses[::FEW.iterations]                           # each before its first step
    assert both == pytest.approx((one + two) / 2, rel=1e-4) and abs(one - two) > 0.1 * both
    assert all((m.int() - made[2].int()).abs().max() > 2 for m in made[:2])


def test_hooks_are_gone_even_after_an_error(eyes):
    def stop(*_): raise RuntimeError
    with pytest.raises(RuntimeError): sre2l.recover(eyes, torch.arange(2), FEW, watch=stop)
    assert not any(m._forward_pre_hooks for m in eyes.nets[0].modules() if isinstance(m, nn.BatchNorm2d))
    with pytest.raises(ValueError, match='no BatchNorm'):
        sre2l.recover(observer.Observer([models.build('torchvision:alexnet', 10, 64)], [torch.arange(10)], range(10)), torch.arange(2), FEW)


def test_through_the_line(digits, eyes, tmp_path):
    recipe = replace(recipes.get('cifar10-conv3-ipc1-tiny'), recovery=FEW, ipc=2)
    made = pipeline.make_set('sre2l', recipe, digits, eyes, 3, batch=9, workers=1, device='cpu', progress=None)
    made.save(tmp_path / 'set')
    loaded = distilled.DistilledSet.load(tmp_path / 'set')
    assert distilled.verify(tmp_path / 'set')['ok'] and torch.equal(loaded.x, made.x) and loaded.factor == 1 and loaded.patches == []
    _, result = pipeline.train_set(loaded, eyes, datasets.load('digits', 'val'), recipe.student, recipe.training, 0)
    assert (result['method'], result['ipc']) == ('sre2l', 2) and result['bytes']['images'] > 0
    with pytest.raises(ValueError, match='keep the images'): distilled.rebuild(loaded.manifest, digits)


def test_from_the_command_line(eyes, tmp_path, capsys):
    models.save(eyes.nets[0], tmp_path / 'o.safetensors')
    argv = ['distill', '--data', 'digits', '--observer', str(tmp_path / 'o.safetensors'), '--no-check', '--ipc', '2', '--out', str(tmp_path / 'set')]
    assert cli.main([*argv, '--iterations', '3']) == 2 and 'it is for --method sre2l' in capsys.readouterr().err
    assert cli.main([*argv, '--method', 'sre2l', '--iterations', '3']) == 0
    manifest = json.loads((tmp_path / 'set' / 'rded.json').read_text())
    assert (manifest['method'], manifest['settings']['iterations'], manifest['settings']['lr']) == ('sre2l', 3, 0.25)
    assert cli.main(['verify', str(tmp_path / 'set')]) == 0 and cli.main(['info', str(tmp_path / 'set')]) == 0
    assert cli.main(['rebuild', '--manifest', str(tmp_path / 'set' / 'rded.json'), '--data', 'digits', '--out', str(tmp_path / 'again')]) == 2
    assert 'keep the images' in capsys.readouterr().err
