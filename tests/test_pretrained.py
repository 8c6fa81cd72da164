"""Observers that were trained elsewhere: files as the published ones, with or without wrapping, and the class-order check on them."""
import argparse
import json
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from rded import datasets, models
from rded.cli import main
from rded.observer import check_class_order, get_observer, match_columns


class PublishedConvNet(nn.Module):
    "The layers of the published ConvNet, under the names its files use."
    def __init__(self, depth, classes, size):
        super().__init__()
        lists = {'conv': [], 'norm': []}
        for d in range(depth): lists['conv'].append(nn.Conv2d(128 if d else 3, 128, 3, padding=1)), lists['norm'].append(nn.BatchNorm2d(128))
        self.layers = nn.ModuleDict({k: nn.ModuleList(v) for k, v in lists.items()})
        self.classifier = nn.Linear(128 * (size >> depth) ** 2, classes)

    def forward(self, x):
        for conv, norm in zip(self.layers['conv'], self.layers['norm']): x = nn.functional.avg_pool2d(norm(conv(x)).relu(), 2)
        return self.classifier(x.flatten(1))


def published(name, classes, size):
    "A network built as the published code builds it: torchvision's with a 1000-way head that is sliced, the small-image ResNets changed by hand."
    import torchvision
    torch.manual_seed(0)
    if name.startswith('conv'): net = PublishedConvNet(int(name[4:]), classes, size)
    else:
        net = torchvision.models.get_model(name.removesuffix('_modified'), weights=None)
        if name.endswith('_modified'): net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
        for p in list(net.parameters())[-2:]: p.data = p.data[:classes]
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d): m.running_mean.uniform_(-.1, .1), m.running_var.uniform_(.5, 1.5)
    return net.eval()


def as_file(net, path, wrapping):
    "Saved bare, under 'model', from DataParallel, or as torchvision's reference script does."
    state = net.state_dict()
    if 'module' in wrapping: state = {f'module.{k}': v for k, v in state.items()}
    if 'reference' in wrapping: state = {'model': state, 'optimizer': {'state': {}, 'param_groups': [{'lr': 0.1}]}, 'epoch': 89, 'args': argparse.Namespace(lr=0.1, model='resnet18')}
    elif 'model' in wrapping: state = {'model': state}
    torch.save(state, path)
    return path


@pytest.mark.parametrize('name, classes, size, wrapping', [
    ('conv3', 10, 32, 'model'), ('conv3', 100, 32, 'module'), ('conv4', 200, 64, 'model'), ('conv5', 10, 128, 'model module'), ('conv6', 100, 128, 'reference'), ('conv4', 1000, 64, 'bare'),
    ('resnet18_modified', 10, 32, 'model'), ('resnet18_modified', 200, 64, 'model module'), ('resnet18', 10, 224, 'model'), ('resnet18', 1000, 224, 'reference module'),
    ('mobilenet_v2', 200, 64, 'model'), ('resnet101_modified', 100, 32, 'model')])
def test_files_as_the_published_ones(name, classes, size, wrapping, tmp_path):
    theirs = published(name, classes, size)
    net = models.load(as_file(theirs, tmp_path / 'observer.pth', wrapping), size=size)
    assert (net.arch, net.num_classes, net.size) == (name, classes, size)
    x = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (models.IMAGENET_MEAN, models.IMAGENET_STD))
    with torch.no_grad(): ours, wanted = net(x), theirs((x.float() / 255 - mean) / std)
    assert (ours - wanted).abs().max() < 1e-5 * max(1, wanted.abs().max())


@pytest.mark.parametrize('name, size', [('googlenet', 224), ('inception_v3', 299)])
def test_weights_that_bring_colours_to_a_half_see_what_torchvisions_network_sees(name, size, tmp_path, monkeypatch):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torchvision.models.get_model(name, weights=None, init_weights=False, aux_logits=True, transform_input=True).eval()
    state = theirs.state_dict()
    torch.save(state, tmp_path / f'{name}-0123.pth')
    monkeypatch.setattr(sys.modules[f'torchvision.models.{name.partition("_")[0]}'].WeightsEnum, 'get_state_dict', lambda *_, **__: state)
    x = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (models.IMAGENET_MEAN, models.IMAGENET_STD))
    with torch.no_grad(): wanted = theirs((x.float() / 255 - mean) / std)
    released = models.released(name)
    models.save(released, tmp_path / 'kept.safetensors')
    for net in (released, models.load(tmp_path / f'{name}-0123.pth', size=size), models.load(tmp_path / 'kept.safetensors')):
        with torch.no_grad(): assert (net(x) - wanted).abs().max() < 1e-3 * wanted.abs().max()


def test_a_file_of_the_wrong_size_is_said(tmp_path):
    path = as_file(published('conv3', 10, 32), tmp_path / 'cifar10_conv3.pth', 'model')
    with pytest.raises(ValueError, match='looks at 32 px images, not at 16 px'): get_observer(str(path), datasets.load('digits'), 16)
    with pytest.raises(ValueError, match='has 10 unnamed classes|network of 10 classes'):
        images = datasets.load('digits')
        images.classes = images.classes[:7]
        get_observer(str(path), images, 32)


@pytest.fixture(scope='module')
def trained():
    "A Conv-3 that knows the digits, trained for a few steps by a plain loop, as the published code would save it."
    images, net = datasets.load('digits'), published('conv3', 10, 16).train()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (models.IMAGENET_MEAN, models.IMAGENET_STD))
    optimizer, generator = torch.optim.Adam(net.parameters(), 2e-3), torch.Generator().manual_seed(0)
    for _ in range(60):
        rows = torch.randint(0, len(images), (64,), generator=generator)
        loss = nn.functional.cross_entropy(net((images.x[rows].float() / 255 - mean) / std), images.y[rows])
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    return net.eval()


def test_the_class_order_is_told_at_once(trained, tmp_path, capsys):
    "The failure most often reported of the published code: folders in another order than the observer was trained with."
    images, order = datasets.load('digits'), [0, 1, 2, 3, 4, 5, 6, 8, 7, 9]
    right = as_file(trained, tmp_path / 'right.pth', 'model')
    assert check_class_order(get_observer(str(right), images, 16), images)['accuracy'] > 80
    with torch.no_grad(): trained.classifier.weight.copy_(trained.classifier.weight[order]), trained.classifier.bias.copy_(trained.classifier.bias[order])
    wrong = as_file(trained, tmp_path / 'wrong.pth', 'model module')
    with pytest.raises(ValueError, match="'7' looks like its '8', '8' looks like its '7'"): check_class_order(get_observer(str(wrong), images, 16), images)
    argv = ['--data', 'digits', '--ipc', '1', '--preselect', '4', '--crops', '1', '--size', '16', '--quiet']
    assert main(['distill', '--observer', str(wrong), '--out', str(tmp_path / 'a'), *argv]) == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and 'Put the class folders into the order the observer was trained with' in err and not (tmp_path / 'a').exists()
    assert main(['distill', '--observer', str(right), '--out', str(tmp_path / 'b'), *argv]) == 0
    assert main(['distill', '--observer', str(wrong), '--no-check', '--out', str(tmp_path / 'c'), *argv]) == 0


def test_imagenet_heads_serve_subsets_by_wordnet_id():
    "Released weights know ImageNet-1K; the columns of a subset are found by WordNet id, whatever the folders' order."
    wnids, names = models.imagenet_classes()
    net = models.build('conv3', 1000, 16, names, wnids)
    images = datasets.load('digits')
    images.classes = ['n02979186', 'n01440764', *sorted(wnids)[700:708]]
    images.__dict__.pop('wnids', None), images.__dict__.pop('names', None)
    columns = match_columns(net, images)
    assert [wnids[k] for k in columns.tolist()] == images.classes and columns[:2].tolist() == [482, 0]
