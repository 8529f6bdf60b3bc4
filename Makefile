# The commands of this project. Each does its own set-up, idempotently, with a line of progress per step.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
PY := .venv/bin/python
CODE := mesh kube nodeagent ztunnel controlplane waypoint meshctl lab cni bench tests

.PHONY: help
help: ## what there is to run
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 22

.PHONY: setup
setup: ## everything that the other commands need: system packages, Python environment, Rust build, CNI plugin, BPF objects
	@tools/setup.sh system python native plugin bpf

.PHONY: root
root:
	@tools/setup.sh root

.PHONY: demo
demo: root setup ## the main job, shown working: two nodes, real pods, one mesh
	@.venv/bin/meshctl lab demo

.PHONY: test
test: root setup ## every test: Rust, Python, lab
	@tools/setup.sh observers
	cargo test --release --locked -q
	$(PY) -m pytest --second-try

FUZZ_SECONDS ?= 60

.PHONY: fuzz
fuzz: setup ## every parser on generated input, FUZZ_SECONDS=60 for each; `make test` runs a fixed part of it
	FUZZ_SECONDS=$(FUZZ_SECONDS) cargo test --release --locked -q -p ztunnel-core -p ztunnel-net fuzz_ -- --test-threads=2
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(PY) -m pytest -q tests/fuzz

.PHONY: check
check: setup ## lint, types, unit tests: the quick round
	cargo fmt --all --check
	cargo clippy --release --locked -q --all-targets -- -D warnings
	.venv/bin/ruff check $(CODE)
	.venv/bin/ruff format --check $(CODE)
	.venv/bin/mypy
	.venv/bin/stubtest --ignore-missing-stub ztunnel._core
	$(PY) -m pytest -q -m "not lab"

.PHONY: bench
bench: root setup ## the data path beside its peers: CASE=... QUICK=1
	@tools/setup.sh bench
	@$(PY) -m bench; status=$$?; [ -n "$(CASE)$(QUICK)" ] || .venv/bin/meshctl lab layer7 || status=1; exit $$status

.PHONY: gen
gen: setup ## regenerates mesh/gen and ztunnel/crates/core/src/gen from proto/
	$(PY) -m grpc_tools.protoc -Imesh/gen=proto --plugin=protoc-gen-mypy=.venv/bin/protoc-gen-mypy --python_out=. --mypy_out=quiet:. \
		mesh/gen/xds.proto mesh/gen/workload.proto mesh/gen/authorization.proto mesh/gen/ca.proto mesh/gen/zds.proto mesh/gen/spiffe.proto mesh/gen/profile.proto
	$(PY) -m grpc_tools.protoc -Imesh/gen=proto --grpc_python_out=. mesh/gen/xds.proto mesh/gen/ca.proto mesh/gen/spiffe.proto
	$(PY) -m grpc_tools.protoc -Iproto --include_imports --descriptor_set_out=build/resources.binpb workload.proto authorization.proto
	cargo run -q -p ztunnel-gen -- build/resources.binpb ztunnel/crates/core/src/gen

.PHONY: dashboards
dashboards: setup ## writes dashboards/: Grafana's from tools/dashboards.py, Prometheus' rules from tools/slo.py
	$(PY) -m tools.dashboards
	$(PY) -m tools.slo

.PHONY: envoy-schema
envoy-schema: ## cuts the part of Envoy's API that we use into mesh/gen/envoy.binpb
	python3 -m venv build/xds && build/xds/bin/pip install -q xds-protos==1.85.0
	build/xds/bin/python tools/envoy_schema.py mesh/gen/envoy.binpb

.PHONY: lock
lock: ## renews the lock files within pyproject.toml's and Cargo.toml's bounds
	.venv/bin/pip-compile -q --upgrade --generate-hashes --strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links -o requirements.lock pyproject.toml
	.venv/bin/pip-compile -q --upgrade --generate-hashes --allow-unsafe --no-strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --extra dev -o requirements-dev.lock pyproject.toml
	cargo update

.PHONY: clean
clean: ## takes away what the other commands built
	rm -rf build target nodeagent/*/objects .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis ztunnel/_core*.so

.PHONY: bench-compare
bench-compare: setup ## ratios between two result files: A=bench/results/x.json B=bench/results/y.json
	@$(PY) -m bench compare $(A) $(B)
