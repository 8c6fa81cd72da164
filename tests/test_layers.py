"""Who may import whom (the table of the design), and what must not bring torch."""
import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rded

ROOT = Path(rded.__file__).parent
BASE = ('files images datasets shards models replay ranks resume optimizers observer patches select mosaic score distilled export evidence views labels student evaluate fair '
        'vinformation baselines sre2l recipes pipeline').split()
MAY = {
    'files': '', 'images': '', 'datasets': 'files images', 'shards': 'files images datasets', 'models': 'files',
    'replay': '', 'optimizers': 'models', 'observer': 'files datasets models replay resume optimizers', 'ranks': '', 'resume': 'files ranks', 'patches': '', 'select': '', 'mosaic': '',
    'score': 'files images datasets models observer ranks patches select mosaic', 'distilled': 'files images datasets patches mosaic',
    'export': 'files images distilled',
    'evidence': 'images models mosaic patches',
    'views': 'mosaic', 'labels': 'files replay distilled views', 'student': 'files models replay ranks resume optimizers distilled views labels',
    'evaluate': 'datasets models student', 'fair': 'evaluate', 'vinformation': 'observer distilled models mosaic patches',
    'baselines': 'files datasets observer patches select mosaic distilled evidence', 'sre2l': 'files replay observer distilled patches', 'recipes': '',
    'pipeline': ' '.join(BASE), 'report': 'files recipes',
    **{m: ' '.join(BASE + ['report', 'prepare', 'reproduce', 'bench', 'plan', 'faults']) for m in ('prepare', 'reproduce', 'bench', 'plan', 'cli', 'compare')},
    'damage': ' '.join(BASE + ['cli']), 'faults': 'files datasets images resume pipeline cli', '__main__': 'cli', '_modidx': ''}
LIGHT = ('files', 'ranks', 'recipes', 'report', 'cli')


def imported(path):
    "Names of the modules of rded that a file imports, anywhere in it."
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ''
            if node.level: module = f'rded.{module}'.rstrip('.')
            names = [f'{module}.{a.name}' for a in node.names] if module == 'rded' else [module]
        elif isinstance(node, ast.Import): names = [a.name for a in node.names]
        else: continue
        yield from (n.split('.')[1] for n in names if n.startswith('rded.'))


MODULES = sorted(p.stem for p in ROOT.glob('*.py') if p.stem != '__init__')


@pytest.mark.parametrize('module', MODULES)
def test_a_module_imports_only_what_its_storey_allows(module):
    assert module in MAY, f'{module} is not in the table: give it a row'
    assert set(imported(ROOT / f'{module}.py')) <= set(MAY[module].split()) | {'__version__'}


def test_the_package_itself_names_all_its_modules():
    written = {p.stem for p in ROOT.glob('[!_]*.py')}
    assert written <= set(rded._MODULES)
    assert not {*imported(ROOT / '__init__.py')}


@pytest.mark.parametrize('statement', ['import rded', *(f'import rded.{m}' for m in LIGHT)])
def test_light_modules_leave_torch_out(statement):
    if not (ROOT / f"{statement.rpartition('.')[2]}.py").exists() and statement != 'import rded': pytest.skip('not written yet')
    code = f"{statement}\nimport sys\nprint([m for m in ('torch', 'torchvision', 'timm', 'matplotlib', 'sklearn') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


def test_storeys_of_tensors_know_no_data_set():
    for module in ('patches', 'select', 'mosaic', 'views'):
        if module not in MODULES: continue
        text = (ROOT / f'{module}.py').read_text(encoding='utf-8').lower()
        assert not [w for w in ('cifar', 'imagenet', 'digits', "'cuda'") if w in text], module


def test_no_branch_on_a_data_set_outside_recipes():
    for path in ROOT.glob('*.py'):
        if path.stem != 'recipes': assert not re.search(r"(dataset|data) == ['\"](?!digits)", path.read_text(encoding='utf-8')), path.name


def test_version_and_settings_agree():
    settings = (ROOT.parent / 'settings.ini').read_text(encoding='utf-8')
    assert f'version = {rded.__version__}\n' in settings
    assert f'version: {rded.__version__}\n' in (ROOT.parent / 'CITATION.cff').read_text(encoding='utf-8')


def test_submodules_come_when_asked_for():
    assert rded.recipes.get('digits-conv3-ipc10').classes == 10
    with pytest.raises(AttributeError, match='nothing'): rded.nothing
    assert 'recipes' in dir(rded)
