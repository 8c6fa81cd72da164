"""What a GPU computes is what the processor computes: the same sets, views, labels and losses. Skipped where there is no GPU."""
from dataclasses import replace

import pytest
import torch

from rded import cli, datasets, labels, models, pipeline, recipes, resume, student, views
from rded.evaluate import evaluate
from rded.files import read_json
from rded.observer import get_observer, train_observer
from rded.replay import Replay

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device here')
RECIPE = recipes.get('digits-conv3-ipc10')


@pytest.fixture(scope='module')
def digits(): return datasets.load('digits', 'train'), datasets.load('digits', 'val')


@pytest.fixture(scope='module')
def observer_file(digits, tmp_path_factory):
    "An observer that a GPU trained."
    net = train_observer(*digits, 'conv3', RECIPE.size, replace(RECIPE.observer_training, precision=models.pick_precision('auto', 'cuda')), device='cuda')
    assert net.info['top1'] > 90
    models.save(net, file := tmp_path_factory.mktemp('observer') / 'digits.safetensors')
    return file


def test_an_observer_learns_by_muon(digits):
    net = train_observer(*digits, 'conv3', RECIPE.size, replace(RECIPE.observer_training, epochs=3, **recipes.MUON), device='cuda')
    assert net.info['top1'] > 90 and net.info['training']['optimizer'] == 'muon'


def eyes_on(device, file, digits): return get_observer(str(file), digits[0], device=device)


def test_logits_and_accuracy_agree(digits, observer_file):
    here, there = (eyes_on(device, observer_file, digits) for device in ('cpu', 'cuda'))
    x = digits[1].batch(range(200), RECIPE.size)
    torch.testing.assert_close(there.logits(x.cuda()).cpu(), here.logits(x), rtol=1e-2, atol=2e-2)     # convolutions may use TF32
    found = [evaluate(models.load(str(observer_file), device=d), digits[1], device=d)['top1'] for d in ('cpu', 'cuda')]
    assert abs(found[0] - found[1]) <= 0.5


@pytest.mark.parametrize('factor', [1, 2])
def test_the_same_patches_are_chosen(digits, observer_file, factor):
    recipe = replace(RECIPE, factor=factor, ipc=3)
    here, there = (pipeline.distill(recipe, digits[0], eyes_on(d, observer_file, digits), 0, device=d) for d in ('cpu', 'cuda'))
    told = [[(p['source'], tuple(p['box'])) for image in made.manifest['images'] for p in image['patches']] for made in (here, there)]
    same = sum(a == b for a, b in zip(*told)) / len(told[0])
    assert same >= 0.9, f'{same:.0%} of the patches are the same'       # TF32 may swap two that are equally good
    assert here.x.shape == there.x.shape and there.x.device.type == 'cpu'


@pytest.mark.parametrize('change', [{}, {'mix': 'mixup', 'mix_alpha': 0.8}, {'randaugment': 2}, {'one_tile': 0.5}])
def test_views_agree(digits, change):
    training = replace(RECIPE.training, **change)
    x = digits[0].batch(range(40), 32)
    for _, seen in views.draw_epoch(40, 32, 2, training, seed=3, epoch=1):
        n = len(seen)
        here, there = views.apply_views(x[:n], seen), views.apply_views(x[:n].cuda(), seen).cpu()
        off = (here - there).abs()
        assert (off > 0.02).float().mean() < 0.002, f'{change}: {off.max()}'       # posterise and equalise jump where rounding differs


def test_views_wait_for_nothing(digits):
    codes = 32 * 9 + torch.arange(2 * len(views.ALTERATIONS))[:, None]
    training = replace(RECIPE.training, batch_size=len(codes))
    seen = replace(next(views.draw_epoch(len(codes), 32, 2, training, seed=3, epoch=1))[1], altered=codes)
    x = digits[0].batch(range(len(codes)), 32).cuda()
    views.apply_views(x, seen)
    try:
        torch.cuda.set_sync_debug_mode('error')
        views.apply_views(x, seen)
    finally: torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize('optimizer', recipes.OPTIMIZERS)
@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_students_learn_alike(digits, optimizer, precision):
    made = pipeline.make_set('random-images', RECIPE, digits[0], None, 0)
    training = replace(RECIPE.training, epochs=12, batch_size=20, optimizer=optimizer, lr=0.05 if optimizer == 'sgd' else 1e-3)
    losses, tops = [], []
    for device in ('cpu', 'cuda'):
        net = models.build('conv3', 10, RECIPE.size, seed=0)
        history = student.train_student(net, made, labels.HardLabels(10), training, seed=0, device=device, precision=precision if device == 'cuda' else 'float32')
        losses.append([r['loss'] for r in history.rows]), tops.append(evaluate(net, digits[1], device=device)['top1'])
    assert losses[1][0] == pytest.approx(losses[0][0], rel=0.05) and losses[1][-1] < losses[1][0] and min(tops) > 60, (losses, tops)


@pytest.mark.parametrize('optimizer, change', [('adamw', {}), ('muon', {}), ('adamw', {'hard_weight': 0.5, 'average': 0.9}), ('muon', {'seen_at': 8, 'seen_until': 0.5})])
@pytest.mark.parametrize('batch', [20, 30])      # of 100 images: 30 leaves a smaller one
def test_recorded_steps_are_the_steps(digits, observer_file, optimizer, change, batch):
    made = pipeline.make_set('random-images', RECIPE, digits[0], None, 0)
    training = replace(RECIPE.training, epochs=8, batch_size=batch, optimizer=optimizer, stretch=1.0, **change)
    arch, losses, weights = 'vgg8_modified' if training.seen_at else 'conv3', [], []
    for recorded in (False, True):
        net = models.build(arch, 10, RECIPE.size, seed=0)
        history = student.train_student(net, made, labels.LiveLabels(eyes_on('cuda', observer_file, digits)), training, seed=0, device='cuda', recorded=recorded)
        losses.append([r['loss'] for r in history.rows]), weights.append(torch.cat([p.detach().flatten() for p in net.body.parameters()]))
    assert losses[1] == pytest.approx(losses[0], rel=0.03), losses
    assert (weights[0] - weights[1]).norm() < 0.1 * (weights[0] - torch.cat([p.detach().flatten() for p in models.build(arch, 10, RECIPE.size, seed=0).body.parameters()]).cuda()).norm()


@pytest.mark.parametrize('optimizer', ['adamw', 'muon'])
def test_a_recorded_training_goes_on_where_it_was_killed(digits, observer_file, optimizer, monkeypatch, tmp_path):
    monkeypatch.setattr(resume, 'EVERY', 0)
    made, training = pipeline.make_set('random-images', RECIPE, digits[0], None, 0), replace(RECIPE.training, epochs=8, batch_size=20, optimizer=optimizer, stretch=1.0)
    def trained(keep=None, stop=None):
        def log(row):
            if row['epoch'] == stop: raise KeyboardInterrupt
        return student.train_student(models.build('conv3', 10, RECIPE.size, seed=0), made, labels.LiveLabels(eyes_on('cuda', observer_file, digits)), training, device='cuda', log=log, keep=keep)
    with pytest.raises(KeyboardInterrupt): trained(tmp_path / 'kept', 5)
    again, whole = trained(tmp_path / 'kept'), trained()
    assert [r['epoch'] for r in again.rows] == list(range(1, 9)) and [r['loss'] for r in again.rows] == pytest.approx([r['loss'] for r in whole.rows], rel=0.03)


def test_what_cannot_be_recorded_is_done_the_usual_way():
    def asks(x): return x * (2 if x.sum().item() > 0 else 3)
    step = Replay(asks, 'cuda')
    with pytest.warns(UserWarning, match='cannot be recorded'): found = [step(torch.tensor([v], device='cuda')).item() for v in (1., -1., 1., -1., 1., -1.)]
    assert found == [2, -3, 2, -3, 2, -3] and not step.records
    assert (torch.ones(3, device='cuda') @ torch.ones(3, device='cuda')).item() == 3        # the GPU is well


@pytest.mark.parametrize('method', ['sre2l', 'herding', 'random-mosaics'])
@pytest.mark.parametrize('kind', ['region', 'fixed', 'hard'])
def test_the_whole_line(digits, observer_file, method, kind, tmp_path):
    recipe = replace(RECIPE, ipc=1, name='digits-conv3-ipc1', recovery=replace(recipes.RECOVERIES['digits'], iterations=5))
    recipe = replace(recipe, training=replace(recipe.training, epochs=2))
    [found] = pipeline.run(recipe, 'digits', str(observer_file), tmp_path, methods=[method], labels=kind, device='cuda', log=lambda text: None)
    assert found['environment']['device'] == 'cuda' and found['peak_memory_mb'] > 0 and 0 <= found['top1'] <= 100


def test_the_commands(digits, observer_file, tmp_path):
    common = ['--device', 'cuda', '--quiet']
    assert cli.main(['distill', '--data', 'digits', '--observer', str(observer_file), '--ipc', '2', '--preselect', '20', '--out', str(tmp_path / 'set'), *common]) == 0
    assert cli.main(['relabel', '--distilled', str(tmp_path / 'set'), '--observer', str(observer_file), '--epochs', '2', '--out', str(tmp_path / 'labels'), *common]) == 0
    assert cli.main(['train', '--distilled', str(tmp_path / 'set'), '--observer', str(observer_file), '--val', 'digits', '--student', 'conv3', '--epochs', '2', '--json', str(tmp_path / 'r.json'), '--out', str(tmp_path / 's.safetensors'), *common]) == 0
    assert read_json(tmp_path / 'r.json')['environment']['device'] == 'cuda'
    assert cli.main(['run', 'cifar10-conv3-ipc1-tiny-plus', '--out', str(tmp_path / 'plus'), *common]) == 0
