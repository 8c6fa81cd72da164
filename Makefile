# make              set up .venv (once, and again when the dependency lists change)
# make quickstart   the digits, end to end, in minutes: observer, distilled set, student
# make test         every notebook, then pytest
# make reproduce    a table of the paper: make reproduce TABLE=main_table DATA=../data [MORE='--seeds 0 --dry-run']
# make bars         `plus`, `long` and `steady` on other networks and data, three seeds a cell, and the observers that label there; what stands is not run again: make bars DATA=../data [MINUTES=25] [AT_ONCE=2] [METHOD=random-images] [HARD=1: the cells of `plus` with class labels]
# make gpu          one GPU: the bars, then what is worth most of the tables (ResNet-18's, plus's, long's and steady's that stand in reports/ are left out), then the GPU's speed: make gpu DATA=../data [MINUTES=25, of each of the two] [DEVICES=0,0]
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

# `plus`, `long` and `steady` on other networks and data than Conv-3 and CIFAR-10. An observer that is not in reports/observers is trained, once; a cell is one seed, and what stands in reports/results is left out
MINUTES ?= 25
AT_ONCE ?= 2
METHOD ?= rded
RDED := $(BIN)/python -m rded
EYES := reports/observers
cifar_resnet18 = $(RDED) observer --data $(DATA)/cifar10 --dataset CIFAR-10 --arch resnet18_modified --size 32 --out $@ --workers 4 --quiet
runs/bars/observers/cifar10-resnet18-10epochs.safetensors runs/bars/observers/cifar10-resnet18-20epochs.safetensors: runs/bars/observers/cifar10-resnet18-%epochs.safetensors:
	$(cifar_resnet18) --epochs $* --label-smoothing 0.1
runs/bars/observers/cifar10-resnet18-10epochs-muon.safetensors:
	$(cifar_resnet18) --epochs 10 --optimizer muon --label-smoothing 0
runs/bars/observers/imagenette-resnet18-33epochs.safetensors: runs/bars/observers/imagenette-resnet18-%epochs.safetensors:
	$(RDED) observer --data $(DATA)/imagenette2-160 --dataset ImageNette --arch resnet18 --size 224 --epochs $* --out $@ --workers 4 --quiet
imagenette_at128 := runs/bars/observers/imagenette-resnet18-at128-40epochs-muon.safetensors
$(imagenette_at128):
	$(RDED) observer --data $(DATA)/imagenette2-160 --dataset ImageNette --arch resnet18 --size 224 --seen-at 128 --epochs 40 --optimizer muon --label-smoothing 0 --set batch_size=128 --out $@ --workers 4 --quiet

method = $(if $(filter rded,$(METHOD)),$(or $(1),rded),$(METHOD))
hard = $(if $(HARD),-hard)
define CELL
cells += $(foreach seed,0 1 2,$(1)$(6)$(hard)-$(call method,$(7))-seed$(seed).json)
runs/bars/results/$(1)$(6)$(hard)-$(call method,$(7))-seed%.json: | $(3) $(if $(HARD),,$(4))
	$(RDED) run $(1) --data $(DATA)/$(2) --observer $(3) $(if $(HARD),--hard,--labeller $(4)) --methods $(call method,$(7)) --seeds $$* --out runs/bars --workers 4 --quiet $(5) $(MORE)
endef
# $(call cell,recipe,data set,who scores,who labels,other options,what these add to the name,what chooses in place of rded), in order of worth
cell = $(if $(and $(HARD),$(filter-out %-plus,$(1))),,$(eval $(call CELL,$(1),$(2),$(3),$(4),$(5),$(6),$(7))))
conv5 = $(EYES)/imagenette2-160-conv5-128px-$(1)epochs-seed0.safetensors
resnet18 = runs/bars/observers/$(1)epochs.safetensors
$(call cell,cifar10-resnet18-ipc10-long,cifar10,$(EYES)/cifar10-conv3.safetensors,$(call resnet18,cifar10-resnet18-10))
$(call cell,cifar10-resnet18-ipc10-plus,cifar10,$(EYES)/cifar10-conv3.safetensors,$(call resnet18,cifar10-resnet18-10))
$(call cell,imagenette-conv5-ipc50-steady,imagenette2-160,$(call conv5,8),$(call conv5,67))
$(call cell,imagenette-resnet18-ipc50-plus,imagenette2-160,$(call resnet18,imagenette-resnet18-33),$(call resnet18,imagenette-resnet18-33),--epochs 100,-epochs-100)
in_hundreds = --set batch_size=100,lr=0.008,min_scale=0.25,randaugment=1
$(call cell,cifar10-resnet18-ipc50-steady,cifar10,$(EYES)/cifar10-conv3.safetensors,runs/bars/observers/cifar10-resnet18-10epochs-muon.safetensors,--epochs 1150 $(in_hundreds),-epochs-1150-batch-size-100-lr-0.008-min-scale-0.25-randaugment-1,top-of-clusters)
small_to_begin_with = $(in_hundreds),seen_at=128,seen_until=0.9
$(call cell,imagenette-resnet18-ipc50-steady,imagenette2-160,$(imagenette_at128),$(imagenette_at128),--epochs 1150 $(small_to_begin_with),-epochs-1150-batch-size-100-lr-0.008-min-scale-0.25-randaugment-1-seen-at-128-seen-until-0.9,top-of-clusters)
$(call cell,imagenette-resnet18-ipc10-plus,imagenette2-160,$(call resnet18,imagenette-resnet18-33),$(call resnet18,imagenette-resnet18-33))
$(call cell,imagenette-resnet18-ipc1-plus,imagenette2-160,$(call resnet18,imagenette-resnet18-33),$(call resnet18,imagenette-resnet18-33))
$(call cell,cifar10-resnet18-ipc1-plus,cifar10,$(EYES)/cifar10-conv3.safetensors,$(EYES)/conv3-epochs2-seed0.safetensors)
$(call cell,imagenette-conv5-ipc1-plus,imagenette2-160,$(call conv5,8),$(call conv5,8))
$(call cell,imagenette-conv5-ipc10-plus,imagenette2-160,$(call conv5,8),$(call conv5,8))
$(call cell,imagenette-conv5-ipc50-plus,imagenette2-160,$(call conv5,8),$(call conv5,67))
$(call cell,cifar10-resnet101-ipc1-plus,cifar10,$(EYES)/cifar10-conv3.safetensors,$(EYES)/conv3-epochs2-seed0.safetensors)
$(call cell,cifar10-resnet101-ipc10-plus,cifar10,$(EYES)/cifar10-conv3.safetensors,$(call resnet18,cifar10-resnet18-10))
ifdef HARD
$(call cell,cifar10-resnet18-ipc50-plus,cifar10,$(EYES)/cifar10-conv3.safetensors)
endif
.PHONY: cells
cells: $(foreach cell,$(cells),$(if $(wildcard reports/results/$(cell)),,runs/bars/results/$(cell)))
bars: $(SETUP)
	mkdir -p runs/bars/results runs/bars/observers
	-timeout $(MINUTES)m sh -c '$(MAKE) -k -j $(AT_ONCE) cells || $(MAKE) -k -j $(AT_ONCE) cells'    # a training that died of the GPU is tried once more
	for f in reports/results/*-plus-*.json reports/results/*-long-*.json reports/results/*-steady-*.json; do test ! -e $$f -o -e runs/bars/results/$${f##*/} || cp $$f runs/bars/results/; done
	$(RDED) report --results runs/bars/results --out runs/bars/report

DEVICES ?= 0,0
gpu: bars
	mkdir -p runs/reproduce/results
	for f in reports/results/cifar10-resnet18-ipc*.json reports/results/imagenette-resnet18-ipc*.json runs/bars/results/*.json; do case $$f in */imagenette-conv5-ipc1-plus-*|*/imagenette-conv5-ipc10-plus-*) continue;; esac; test -e runs/reproduce/results/$${f##*/} || cp $$f runs/reproduce/results/; done    # Conv-5's were labelled otherwise than the essentials would
	$(RDED) reproduce essentials $(if $(DATA),--data $(DATA)) --minutes $(MINUTES) --device cuda --devices $(DEVICES) --workers 4 --out runs/reproduce $(MORE) || test $$? -eq 1    # 1: some cells could not be run, and were named
	$(RDED) bench gpu --out runs/reproduce/results

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
