"""Notebooks and modules say the same, and what is stored in a notebook is small, clean and nobody's."""
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(p for p in (ROOT / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
BIN = Path(sys.executable).parent
name = lambda p: str(p.relative_to(ROOT))


def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']


def outputs(path):
    "(cell number, text) of every stored output but pictures."
    for i, cell in enumerate(cells(path)):
        for out in cell.get('outputs', []):
            data = {k: v for k, v in out.get('data', {}).items() if not k.startswith('image/')}
            yield i, json.dumps([data, out.get('text', ''), out.get('traceback', '')], ensure_ascii=False)


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    "A copy of the repository in which the notebooks were cleaned and exported again."
    if not (BIN / 'nbdev_export').exists(): pytest.skip('nbdev is not installed: pip install -e .[dev]')
    copy = tmp_path_factory.mktemp('copy')
    for part in ('nbs', 'rded'): shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
    for part in ('settings.ini', 'setup.py', 'README.md', 'pyproject.toml'): shutil.copy(ROOT / part, copy / part)
    for module in (copy / 'rded').glob('[!_]*.py'): module.unlink()
    for command in ('nbdev_clean', 'nbdev_export'): subprocess.run([BIN / command], cwd=copy, check=True, capture_output=True)
    return copy


def test_modules_are_what_the_notebooks_export(exported):
    ours, again = ({p.name: p.read_text(encoding='utf-8') for p in (r / 'rded').glob('*.py')} for r in (ROOT, exported))
    assert set(ours) == set(again)
    assert [n for n in ours if ours[n] != again[n]] == []


def test_notebooks_are_clean(exported):
    dirty = [name(p) for p in NOTEBOOKS if p.read_text(encoding='utf-8') != (exported / name(p)).read_text(encoding='utf-8')]
    assert dirty == [], 'run make export'


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_size(path): assert path.stat().st_size < 300_000


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_head(path):
    "H1 and a one-sentence blockquote."
    first = ''.join(cells(path)[0]['source'])
    second = ''.join(cells(path)[1]['source']) if first.count('\n') < 1 else ''
    assert re.match(r'# \S.*\n+> \S', first + '\n' + second)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_outputs_are_executed_whole_and_without_a_trace_of_the_machine(path):
    for i, text in outputs(path):
        assert not re.search(r'(?<![\w.])/(home|root|tmp|work|Users|var|mnt|usr)/', text), f'cell {i}: an absolute path'
        assert not re.search(r'\bat 0x[0-9a-f]{6,}', text), f'cell {i}: an address'
        assert '\\r' not in text and 'it/s' not in text, f'cell {i}: a progress bar'
        assert 'Traceback' not in text, f'cell {i}: a traceback'
    if path.parent.name == 'nbs': assert any(c.get('outputs') for c in cells(path)), 'run it before you commit it'


def test_numbers_are_the_reading_order():
    numbers = [p.name.split('_')[0] for p in NOTEBOOKS if p.parent.name == 'nbs']
    assert all(re.fullmatch(r'\d\d', n) for n in numbers) and len(set(numbers)) == len(numbers)


def test_a_module_uses_only_modules_with_lower_numbers():
    order = {p.stem[3:]: int(p.stem[:2]) for p in NOTEBOOKS if p.parent.name == 'nbs'}
    for path in (ROOT / 'rded').glob('[!_]*.py'):
        imports = [n for n in ast.walk(ast.parse(path.read_text(encoding='utf-8'))) if isinstance(n, ast.ImportFrom) and n.level]
        used = [u for n in imports for u in ([n.module] if n.module else [a.name for a in n.names])]
        assert [u for u in used if u in order and order[u] >= order[path.stem]] == [], path.name


def test_tutorials_export_nothing():
    for path in NOTEBOOKS:
        if path.parent.name != 'nbs':
            assert not [c for c in cells(path) if c['cell_type'] == 'code' and re.search(r'^#\| *(export|default_exp)', ''.join(c['source']), re.M)]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_papermill_finds_kernel_and_language(path):
    spec = json.loads(path.read_text(encoding='utf-8'))['metadata'].get('kernelspec', {})
    assert (spec.get('name'), spec.get('language')) == ('python3', 'python')
