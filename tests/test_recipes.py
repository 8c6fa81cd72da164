"""Recipes against the published numbers and the hyper-parameters of the published code."""
import csv
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from rded import recipes
from rded.recipes import MAIN, RECIPES, cell, citable, get, paper_training, published

CSV = Path(recipes.__file__).with_name('published.csv')


def rows(table):
    with CSV.open(encoding='utf-8') as f: return [r for r in csv.DictReader(f) if r['table'] == table]


def test_digits_letters_and_signs_are_not_mirrored():
    training = paper_training('conv3', 1, 10)
    mirrored = {name: recipes.unmirrored(training, name).flip for name in ('digits', 'torchvision:MNIST', 'held-out-20:digits', 'torchvision:CIFAR10', 'a/folder/SVHN')}
    assert mirrored == {'digits': False, 'torchvision:MNIST': False, 'held-out-20:digits': False, 'torchvision:CIFAR10': True, 'a/folder/SVHN': True}
    assert [recipes.observer_training('conv3', name).flip for name in ('digits', 'torchvision:GTSRB', 'CIFAR-10', None)] == [False, False, True, True]


def test_one_recipe_for_each_cell_of_the_main_table():
    theirs = {(r['dataset'], r['ipc'], r['observer'], r['student']): (float(r['top1']), float(r['std']), r['source'])
              for r in rows('main_table2') if r['method'] == 'RDED'}
    ours = {(r.dataset, str(r.ipc), citable(r.observer), citable(r.student)): (r.published.top1, r.published.std, r.published.source) for r in MAIN}
    assert ours == theirs and len(MAIN) == 63


def test_every_published_row_is_found_again():
    for r in [r for t in {r.table for r in recipes.published_rows()} for r in rows(t)]:
        p = published(r['table'], r['dataset'], int(r['ipc']) if r['ipc'] else None, r['method'], r['observer'], r['student'] or None)
        assert (p.top1, p.source) == (float(r['top1']), r['source'])
        assert p.std == (float(r['std']) if r['std'] else None)


def test_names_are_unique_and_each_main_cell_has_a_tiny_twin():
    assert len(RECIPES) == 2 * 63 + 1
    for r in MAIN:
        t = RECIPES[r.name + '-tiny']
        assert (t.student, t.observer, t.factor, t.data, t.published) == (r.student, r.observer, r.factor, 'digits', None)
        assert t.training.epochs == 2 and t.factor**2 * t.ipc <= t.preselect <= 12


@pytest.mark.parametrize('student, rate', [
    ('conv3', 1e-3), ('conv4', 1e-3), ('conv5', 1e-3), ('conv6', 1e-3), ('resnet18', 1e-3), ('resnet18_modified', 1e-3),
    ('resnet50', 1e-3), ('resnet101_modified', 1e-3), ('efficientnet_b0', 2e-3), ('mobilenet_v2', 2.5e-3), ('vgg11', 5e-4),
    ('alexnet', 1e-4), ('vit_b_16', 1e-4), ('swin_v2_t', 1e-4), ('torchvision:vgg11', 5e-4),
    ('timm:vit_base_patch16_224.augreg_in1k', 1e-4), ('timm:mobilenetv2_100', 2.5e-3), ('timm:swinv2_tiny_window8_256', 1e-4), ('timm:efficientnet_b0', 2e-3)])
def test_learning_rates(student, rate):
    assert (paper_training(student, 10, 10).lr, paper_training(student, 10, 10).notes) == (rate, ())


def test_a_student_without_a_published_rate_says_so():
    t = paper_training('timm:convnext_tiny', 10, 10)
    assert t.lr == 1e-3 and 'no learning rate is published for timm:convnext_tiny' in t.notes[0]


@pytest.mark.parametrize('dataset, classes, batches', [
    ('CIFAR-10', 10, (10, 50, 100)), ('ImageNette', 10, (10, 50, 100)), ('ImageNet-100', 100, (20, 100, 200)),
    ('Tiny-ImageNet', 200, (100, 100, 100)), ('ImageNet-1K', 1000, (20, 100, 200))])
def test_batches(dataset, classes, batches):
    assert tuple(paper_training('resnet18', i, classes, dataset).batch_size for i in (1, 10, 50)) == batches


@pytest.mark.parametrize('ipc, classes, n, batch', [(2, 10, None, 10), (9, 10, None, 10), (11, 10, None, 50), (200, 10, None, 100),
                                                    (1, 3, None, 3), (10, 2, None, 20), (50, 10, 7, 7)])
def test_batches_the_published_code_does_not_know(ipc, classes, n, batch):
    t = paper_training('conv3', ipc, classes, n=n)
    assert t.batch_size == batch and bool(t.notes) == (ipc not in (1, 10, 50))


def test_the_exception():
    for ipc in (1, 10, 50):
        t = cell('CIFAR-100', 'conv3', ipc).training
        assert (t.lr, t.batch_size) == (2e-3, 25)
    assert paper_training('conv3', 10, 10, 'CIFAR-10', observer='conv3').lr == 1e-3
    assert paper_training('conv3', 10, 100, 'CIFAR-100', observer='resnet18_modified').lr == 1e-3
    assert paper_training('resnet18_modified', 10, 100, 'CIFAR-100', observer='conv3').lr == 1e-3


def test_what_every_published_training_shares():
    for t in (r.training for r in MAIN):
        assert (t.epochs, t.optimizer, t.betas, t.weight_decay, t.decay_vectors) == (300, 'adamw', (0.9, 0.999), 0.01, False)
        assert (t.schedule, t.stretch, t.temperature, t.loss) == ('cosine', 2.0, 20.0, 'kl')
        assert (t.tiles, t.min_scale, t.flip, t.mix, t.mix_alpha, t.bn_updates) == ('rows-and-columns', None, True, 'cutmix', 1.0, 2)
    mixup = paper_training('conv3', 10, 10, mix='mixup')
    assert (mixup.temperature, mixup.mix_alpha, mixup.mix) == (4.0, 0.8, 'mixup')


@pytest.mark.parametrize('name, data, size, factor, student, observer', [
    ('cifar10-conv3-ipc10', 'torchvision:CIFAR10', 32, 1, 'conv3', 'conv3'),
    ('cifar100-resnet101-ipc1', 'torchvision:CIFAR100', 32, 1, 'resnet101_modified', 'resnet18_modified'),
    ('tinyimagenet-conv4-ipc50', 'tiny-imagenet-200', 64, 1, 'conv4', 'conv4'),
    ('tinyimagenet-resnet18-ipc50', 'tiny-imagenet-200', 64, 1, 'resnet18_modified', 'resnet18_modified'),
    ('imagenette-conv5-ipc10', 'torchvision:Imagenette', 128, 2, 'conv5', 'conv5'),
    ('imagewoof-resnet18-ipc10', 'imagewoof2', 224, 2, 'resnet18', 'resnet18'),
    ('imagenet100-conv6-ipc1', 'imagenet-100', 128, 2, 'conv6', 'conv6'),
    ('imagenet1k-conv4-ipc1', 'torchvision:ImageNet', 64, 1, 'conv4', 'conv4'),
    ('imagenet1k-resnet101-ipc50', 'torchvision:ImageNet', 224, 2, 'resnet101', 'resnet18')])
def test_cells(name, data, size, factor, student, observer):
    r = get(name)
    assert (r.data, r.size, r.factor, r.student, r.observer) == (data, size, factor, student, observer)
    assert (r.preselect, r.crops, r.scale, r.ratio, r.canvas) == (300, 5, (0.08, 1.0), (1.0, 1.0), 'mean')


def test_observers_are_trained_or_released():
    for r in RECIPES.values(): assert (r.observer_training is None) != (r.observer_weights is None)
    assert get('imagenet1k-resnet18-ipc10').observer_weights == 'torchvision:resnet18'
    o = get('cifar10-conv3-ipc10').observer_training
    assert (o.epochs, o.label_smoothing, o.momentum, o.nesterov, o.crop, o.flip) == (18, 0.1, 0.9, True, 'pad', True)
    assert get('imagenette-resnet18-ipc1').observer_training.crop == 'resized'
    assert not get('digits-conv3-ipc10').observer_training.flip and not get('digits-conv3-ipc10').training.flip


def test_a_training_that_would_do_nothing_or_something_else_is_refused():
    r = get('cifar10-conv3-ipc10')
    with pytest.raises(ValueError, match='average is 1'): replace(r.training, average=1.0)
    with pytest.raises(ValueError, match="schedule is 'constant'|schedule 'constant'"): replace(r.observer_training, schedule='constant')


@pytest.mark.parametrize('change, words', [
    (dict(ipc=0), 'ipc is 0'), (dict(ipc=-1), 'ipc is -1'), (dict(factor=0), 'factor is 0'), (dict(preselect=0), 'preselect is 0'),
    (dict(crops=0), 'crops is 0'), (dict(jpeg=96), 'jpeg is 96'), (dict(factor=33), 'factor is 33'), (dict(canvas='black'), "canvas is 'black': choose from mean, enlarge"),
    (dict(labellers=0), 'labellers is 0'), (dict(labellers=0, labeller_epochs=2), 'labellers is 0'), (dict(labellers=2), 'labellers is 2: give labeller_epochs'), (dict(labeller_epochs=-1), 'labeller_epochs is -1'),
    (dict(ratio=(0.75, 1.33)), r'ratio is .0.75, 1.33.: give .1, 1.')])
def test_bad_values_are_named(change, words):
    with pytest.raises(ValueError, match=words): replace(get('cifar10-conv3-ipc10'), **change)


@pytest.mark.parametrize('change, words', [
    (dict(schedule='step'), "schedule is 'step': choose from cosine, constant"), (dict(normalisation='../x'), "normalisation is '../x': choose from imagenet, half, none"),
    (dict(evaluate_every=0), 'evaluate_every is 0'), (dict(evaluate_from=2), 'evaluate_from is 2'), (dict(hard_weight=-1), 'hard_weight is -1')])
def test_bad_values_of_a_training_are_named_before_any_work(change, words):
    with pytest.raises(ValueError, match=words): replace(get('cifar10-conv3-ipc10').training, **change)


def test_normalisations_are_the_models():
    from rded.models import NORMALISATIONS
    assert recipes.NORMS == tuple(NORMALISATIONS)


def test_unknown_names_suggest():
    with pytest.raises(ValueError, match='did you mean cifar10-conv3-ipc10'): get('cifar10-conv3-ip10')
    with pytest.raises(ValueError, match='`rded recipes` lists all 127'): get('')
    with pytest.raises(ValueError, match='did you mean ImageNette'): cell('Imagenete', 'convnet', 1)


def test_nothing_can_be_changed():
    r = get('cifar10-conv3-ipc10')
    for thing, field in ((r, 'ipc'), (r.training, 'lr'), (r.observer_training, 'epochs'), (r.published, 'top1')):
        with pytest.raises(FrozenInstanceError): setattr(thing, field, 1)


def test_the_repr_names_every_field_and_the_source():
    text = repr(get('cifar10-conv3-ipc10'))
    assert '  stretch            2.0' in text and '50.2 ± 0.3  (RDED Table 2' in text


def test_data_sets_are_known_by_what_people_call_them():
    assert [recipes.dataset_of(n) for n in ('CIFAR10', 'cifar-10', 'tiny-imagenet-200', 'torchvision:ImageNet', 'imagenette', 'photos', '')] == \
        ['CIFAR-10', 'CIFAR-10', 'Tiny-ImageNet', 'ImageNet-1K', 'ImageNette', None, None]


def test_forms_of_a_data_set_are_not_its_successors():
    forms = 'imagenette2', 'ImageNette2-160', 'imagenette2-320', 'imagewoof2', 'imagewoof-160', 'imagenette-fastai', 'cifar10', 'cifar10.2', 'cifar10-2', 'cifar102', 'imagenet2', 'imagenet-2', 'tiny-imagenet-2002'
    assert [recipes.form_of(n) for n in forms] == ['ImageNette'] * 3 + ['ImageWoof'] * 2 + ['ImageNette', 'CIFAR-10'] + [None] * 6


def test_a_change_is_in_the_name():
    t = recipes.changed(get('cifar10-conv3-ipc10').training, epochs=3, batch_size=None)
    assert (t.name, t.epochs, t.batch_size) == ('paper, epochs 3', 3, 50)
