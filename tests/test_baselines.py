"""Sets of the same size: what they choose, that they choose it whatever the order, and that they go through the same line."""
import json

import numpy as np
import pytest
import torch

from rded import baselines, cli, datasets, distilled, models, observer, pipeline, recipes
from rded.patches import realism

WHOLE = list(baselines.WHOLE)


@pytest.fixture(scope='module')
def digits(): return datasets.load('digits', 'train')


@pytest.fixture(scope='module')
def eyes(digits): return observer.get_observer([models.build('conv3', 10, 16, digits.classes, seed=s) for s in (0, 1)], digits)


@pytest.fixture(scope='module')
def sets(digits, eyes): return {method: baselines.whole_images(digits, eyes, 4, 16, method, preselect=30, seed=2) for method in WHOLE}


def sources(made): return [p['source'] for p in made.patches]


@pytest.mark.parametrize('method', WHOLE)
def test_the_draw_is_that_of_rded(digits, sets, method):
    drawn = {digits.sources[i] for c in range(10) for i in datasets.draw_order(digits, c, 2)[:30]}
    made = sets[method]
    assert set(sources(made)) <= drawn and len(set(sources(made))) == 40 and made.ipc == 4
    assert all(p['box'] == [0, 0, 16, 16] for p in made.patches)
    assert torch.equal(distilled.rebuild(made.manifest, digits).x, made.x)


@pytest.mark.parametrize('method', WHOLE)
def test_no_order_of_arrival_and_no_thread(digits, eyes, sets, method):
    shuffled = digits.subset(torch.from_numpy(np.random.default_rng(0).permutation(len(digits))))
    for how in (dict(workers=0), dict(workers=3)):
        assert sources(baselines.whole_images(shuffled, eyes, 4, 16, method, preselect=30, seed=2, **how)) == sources(sets[method])


def test_easiest_and_hardest_are_the_ends_of_a_sort(digits, eyes, sets):
    for c in range(10):
        mine = datasets.draw_order(digits, c, 2)[:30]
        score = realism(eyes.logits(digits.x[mine]), torch.full((30,), c))
        ranked = [digits.sources[mine[i]] for i in score.argsort(descending=True).tolist()]
        assert sources(sets['easiest'])[4 * c:4 * c + 4] == ranked[:4]
        assert sources(sets['hardest'])[4 * c:4 * c + 4] == ranked[:-5:-1]


def test_herding_is_greedy_mean_matching_written_out(digits, eyes, sets):
    features = lambda i: torch.cat([torch.nn.functional.normalize(net.features(digits.x[[i]])[0], dim=0) for net in eyes.nets]) / 2 ** 0.5
    mine = sorted(datasets.draw_order(digits, 3, 2)[:30], key=lambda i: digits.ids[i])
    with torch.inference_mode(): phi = {i: features(i).double() for i in mine}
    mean, chosen = sum(phi.values()) / 30, []
    for n in range(1, 5):
        left = [i for i in mine if i not in chosen]
        chosen.append(min(left, key=lambda i: (mean - (sum(phi[j] for j in chosen) + phi[i]) / n).norm()))
    assert sources(sets['herding'])[12:16] == [digits.sources[i] for i in chosen]


def test_k_means_images_are_the_nearest_of_their_cluster(digits, eyes):
    "With as many centres as images every image is its own cluster."
    made = baselines.whole_images(digits, eyes, 6, 16, 'k-means', preselect=6, seed=1)
    for c in range(10): assert set(sources(made)[6 * c:6 * c + 6]) == {digits.sources[i] for i in datasets.draw_order(digits, c, 1)[:6]}


def test_classes_of_different_sizes(digits, eyes):
    "A class smaller than the pre-selection gives all it has; one smaller than IPC is an error that names it."
    few = digits.subset(torch.cat([digits.of_class(0)[:5], (digits.y > 0).nonzero()[:, 0]]))
    made = baselines.whole_images(few, eyes, 5, 16, 'herding', preselect=20)
    assert set(sources(made)[:5]) == {digits.sources[i] for i in digits.of_class(0)[:5].tolist()}
    assert baselines.whole_images(few, eyes, 5, 16, 'easiest', preselect=None).ipc == 5
    with pytest.raises(ValueError, match="5 are in class '0'"): baselines.whole_images(few, eyes, 6, 16, 'herding')


@pytest.mark.parametrize('method', WHOLE)
def test_through_the_line(digits, eyes, method):
    recipe = recipes.get('cifar10-conv3-ipc1-tiny')
    made = pipeline.make_set(method, recipe, digits, eyes, 1)
    _, result = pipeline.train_set(made, eyes, datasets.load('digits', 'val'), recipe.student, recipe.training, 1)
    assert (result['method'], result['ipc'], made.manifest['settings']['preselect']) == (method, recipe.ipc, recipe.preselect)


def test_from_the_command_line(eyes, tmp_path, capsys):
    models.save(eyes.nets[0], tmp_path / 'o.safetensors')
    argv = ['distill', '--data', 'digits', '--ipc', '2', '--no-check', '--out', str(tmp_path / 'set')]
    assert cli.main([*argv, '--method', 'herding', '--size', '16']) == 2 and '--method herding needs --observer' in capsys.readouterr().err
    argv += ['--observer', str(tmp_path / 'o.safetensors')]
    assert cli.main([*argv, '--method', 'herding', '--selection', 'random']) == 2 and 'it is for --method rded' in capsys.readouterr().err
    assert cli.main([*argv, '--method', 'herding', '--preselect', '1']) == 2 and 'would fit' in capsys.readouterr().err
    assert cli.main([*argv, '--method', 'herding', '--preselect', '9']) == 0
    manifest = json.loads((tmp_path / 'set' / 'rded.json').read_text())
    assert (manifest['method'], manifest['settings']['preselect'], len(manifest['images'])) == ('herding', 9, 20)
    assert cli.main(['verify', str(tmp_path / 'set')]) == 0


def test_a_strategy_from_the_command_line(eyes, tmp_path, capsys):
    for net in eyes.nets: models.save(net, tmp_path / f'{len(list(tmp_path.iterdir()))}.safetensors')
    argv = ['distill', '--data', 'digits', '--ipc', '1', '--factor', '2', '--preselect', '8', '--crops', '2', '--no-check',
            '--observer', f"{tmp_path / '0.safetensors'},{tmp_path / '1.safetensors'}"]
    for name in ('k-centre', 'mean-score', 'half-easy-half-hard'):
        assert cli.main([*argv, '--selection', name, '--out', str(tmp_path / name)]) == 0
        assert json.loads((tmp_path / name / 'rded.json').read_text())['settings']['selection'] == name
    assert cli.main([*argv, '--selection', 'kcentre', '--out', str(tmp_path / 'x')]) == 2
    assert 'k-centre' in capsys.readouterr().err
