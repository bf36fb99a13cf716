# Stillhouse. `make` shows this menu. PORT, STILLHOUSE_HOME and ONCE=1 are read by `up` and `demo`.
SHELL := bash
.DEFAULT_GOAL := help
PYTHON_VENV := .venv/bin/python
# Values for a tool that loads the settings without touching a server (mypy's Django plugin).
NO_SERVER := SECRET_KEY=none DATABASE_URL=postgresql://none@127.0.0.1:9/none BROKER_URL=redis://127.0.0.1:9/0 \
	S3_ENDPOINT=http://127.0.0.1:9 S3_ACCESS_KEY=none S3_SECRET_KEY=none WORKER_TOKEN=none AGENT_TOKEN=none
# Dozens of processes start here: without compiled files each would compile thousands of sources anew.
unexport PYTHONDONTWRITEBYTECODE
# Three processes, each with servers of its own: many tests wait for a while, and two would leave a core idle.
BOTH_CORES := -n 3 --dist loadfile

.PHONY: help
help: ## Show this menu
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

.PHONY: venv
venv: ## Make .venv what the lock files say (every target below does it first)
	@requirements/install

.PHONY: demo
demo: venv ## The main job, from an upload to a published adapter; stays up until Ctrl-C (ONCE=1: stops)
	@exec $(PYTHON_VENV) manage.py demo

.PHONY: up
up: venv ## Start the embedded platform without the demonstration, until Ctrl-C
	@exec $(PYTHON_VENV) manage.py up

.PHONY: test
test: lint types browser ## Everything: linters, types and all tests, browser and end to end included
	$(PYTHON_VENV) -m pytest -m "not e2e" $(BOTH_CORES)
	$(PYTHON_VENV) -m pytest -m "e2e and not chaos"

.PHONY: test-quick
test-quick: venv ## The tests that need no engine and no browser
	$(PYTHON_VENV) -m pytest -m "not e2e" $(BOTH_CORES)

.PHONY: chaos
chaos: venv ## Faults at real processes while real runs train (half an hour; ROUNDS=20: until each has had 20)
	$(PYTHON_VENV) benchmarks/chaos.py $(if $(ROUNDS),--rounds $(ROUNDS))

.PHONY: lint
lint: venv ## ruff, and who may import whom
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	PYTHONPATH=platform:. .venv/bin/lint-imports

.PHONY: format
format: venv ## Let ruff rewrite what it can
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

.PHONY: types
types: venv ## mypy --strict
	$(NO_SERVER) .venv/bin/mypy

.PHONY: migrations
migrations: venv ## Fail where a model has changed and its migration is missing
	$(PYTHON_VENV) -m pytest -q tests/web/test_house.py -k migration

.PHONY: browser
browser: venv ## Chromium for the browser tests: Debian's where we may install it, else Playwright's own
	@deploy/browser

.PHONY: css
css: ## Compile the pages' CSS and vendor their libraries (needs npm; the results are committed)
	cd platform/stillhouse/web/assets && npm install --no-save && npm run build

.PHONY: bench
bench: venv ## What benchmarks/README.md reports (half an hour; needs the base of `make up`)
	$(PYTHON_VENV) benchmarks/train.py --base $${STILLHOUSE_HOME:-var}/bases/smollm2-135m-instruct
	$(PYTHON_VENV) benchmarks/gateway.py
	$(PYTHON_VENV) benchmarks/demo.py

.PHONY: bench-gateway
bench-gateway: venv ## What the gateway adds, beside LiteLLM in an environment of its own (two minutes)
	@[ -x var/peers/litellm/bin/litellm ] || { $(PYTHON_VENV) -m venv var/peers/litellm && \
		var/peers/litellm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--require-hashes -r benchmarks/requirements/litellm.txt; }
	$(PYTHON_VENV) benchmarks/gateway.py --litellm var/peers/litellm/bin/python

.PHONY: bench-serving
bench-serving: venv ## Publish, roll back, flip and kill with a real engine (minutes; needs the base of `make up`)
	$(PYTHON_VENV) benchmarks/serving.py --base $${STILLHOUSE_HOME:-var}/bases/smollm2-135m-instruct

.PHONY: bench-jobs
bench-jobs: venv ## A thousand queued jobs on eight workers: shares, queue page, claim, keeper (minutes)
	$(PYTHON_VENV) benchmarks/jobs.py

.PHONY: bench-data
bench-data: venv ## Reading, checking and doctoring a million rows, against datasets + pandas (PEER_PYTHON)
	base=$${STILLHOUSE_HOME:-var}/bases/smollm2-135m-instruct; \
		$(PYTHON_VENV) benchmarks/data.py $$([ -d $$base ] && echo --base $$base)
	$(PYTHON_VENV) benchmarks/data_pages.py

.PHONY: bench-engine
bench-engine: venv ## The training engine beside TRL, at equal loss (half an hour; FULL=1: held-out loss of three seeds as well)
	$(PYTHON_VENV) -m benchmarks.engine.repack --base $${STILLHOUSE_HOME:-var}/bases/smollm2-135m-instruct
	$(PYTHON_VENV) -m benchmarks.engine --base $${STILLHOUSE_HOME:-var}/bases/smollm2-135m-instruct $(if $(FULL),--full)

.PHONY: bench-engine-gpu
bench-engine-gpu: venv ## The same on an NVIDIA GPU, with an 8B-shaped base, TRL and Unsloth
	$(PYTHON_VENV) -m benchmarks.engine.gpu

.PHONY: lock
lock: venv ## Compile requirements/*.in into the hash-locked lists (UPGRADE=1: newest versions)
	requirements/lock $(if $(UPGRADE),--upgrade)
