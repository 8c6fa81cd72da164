# make              set up .venv (once, and again when the dependency lists change)
# make quickstart   the digits, end to end, in minutes: observer, distilled set, student
# make test         every notebook, then pytest
# make reproduce    a table of the paper: make reproduce TABLE=main_table DATA=../data [MORE='--seeds 0 --dry-run']
# make bars         `plus` where an observer of reports/observers is good enough to label, so that none is trained; three seeds a cell, four cells at once, what stands is not run again: make bars DATA=../data [MINUTES=25]
# make gpu          one GPU: the bars, then what is worth most of the tables and does not stand in reports/, four cells at once, then the GPU's speed: make gpu DATA=../data [MINUTES=25, of each of the two] [DEVICES=0,0,0,0]
# make bench        the published way and ours in turn, about ten minutes: make bench [STAGE=gpu DATA=../data/cifar10 OBSERVER=FILE]
# make lab          JupyterLab on the notebooks
# make export       notebooks -> rded/*.py, outputs cleaned
# make clean        remove caches and out/; results, data and .venv stay

PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.setup-done

.PHONY: setup quickstart test lab reproduce bars gpu bench export clean
setup: $(SETUP)

$(SETUP): settings.ini setup.py pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

# one thread is as fast where nothing else runs, and not twenty times as slow beside a busy process
quickstart: export OMP_NUM_THREADS := 1
quickstart: $(SETUP)
	mkdir -p out
	$(BIN)/papermill nbs/tutorials/quickstart.ipynb out/quickstart.ipynb -p out out
	@$(BIN)/python -c 'import json; [print(f"{v:6.1f} %  {k}") for k, v in json.load(open("out/quickstart.json"))["accuracies"].items()]'
	@echo "executed notebook:  out/quickstart.ipynb"
	@echo "the distilled set:  out/quickstart.png"

test: export PATH := $(CURDIR)/$(BIN):$(PATH)
test: export OMP_NUM_THREADS := 1
test: export MPLBACKEND := Agg
test: $(SETUP)
	nbdev_test --n_workers 2
	python -m pytest -n 2 --dist loadfile

TABLE ?= main_table
reproduce: $(SETUP)
	$(BIN)/rded reproduce $(TABLE) $(if $(DATA),--data $(DATA),--tiny) $(MORE)

MINUTES ?= 25
define BARS
cifar10-resnet18-ipc10-plus  cifar10          cifar10-conv3                                conv3-epochs6-seed0
imagenette-conv5-ipc10-plus  imagenette2-160  imagenette2-160-conv5-128px-8epochs-seed0    imagenette2-160-conv5-128px-8epochs-seed0
cifar10-resnet18-ipc50-plus  cifar10          cifar10-conv3                                conv3-epochs12-seed0
cifar10-resnet18-ipc1-plus   cifar10          cifar10-conv3                                conv3-epochs2-seed0
imagenette-conv5-ipc1-plus   imagenette2-160  imagenette2-160-conv5-128px-8epochs-seed0    imagenette2-160-conv5-128px-8epochs-seed0
endef
export BARS
bars: $(SETUP)
	mkdir -p runs/bars/results
	for f in reports/results/*-plus-*.json; do test ! -e $$f -o -e runs/bars/results/$${f##*/} || cp $$f runs/bars/results/; done
	echo "$$BARS" | timeout $(MINUTES)m xargs -L 1 -P 4 sh -c '$(BIN)/python -m rded run $$0 --data $(DATA)/$$1 --observer reports/observers/$$2.safetensors --labeller reports/observers/$$3.safetensors --methods rded --seeds 0,1,2 --out runs/bars --workers 4 --quiet $(MORE)' || test $$? -eq 124    # 124: the minutes are over
	$(BIN)/python -m rded report --results runs/bars/results --out runs/bars/report

DEVICES ?= 0,0,0,0
gpu: bars
	mkdir -p runs/reproduce/results
	for f in reports/results/*-resnet18-ipc*.json runs/bars/results/*.json; do test -e runs/reproduce/results/$${f##*/} || cp $$f runs/reproduce/results/; done
	$(BIN)/rded reproduce essentials $(if $(DATA),--data $(DATA)) --minutes $(MINUTES) --device cuda --devices $(DEVICES) --workers 4 --out runs/reproduce $(MORE) || test $$? -eq 1    # 1: some cells could not be run, and were named
	$(BIN)/rded bench gpu --out runs/reproduce/results

bench: $(SETUP)
	$(BIN)/rded bench $(STAGE) $(if $(DATA),--data $(DATA)) $(if $(OBSERVER),--observer $(OBSERVER)) --out reports/results

lab: $(SETUP)
	$(BIN)/jupyter lab nbs

export: $(SETUP)
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean

clean:
	rm -rf out build dist .pytest_cache .hypothesis
	find rded tests nbs -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
