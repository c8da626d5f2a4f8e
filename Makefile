# make                 builds bin/syscontainer-hooks
# sudo make demo       shows what it does
# sudo make test       runs all tests; without root those that need none
# sudo make install    after make; DESTDIR and PREFIX are honoured

PREFIX   ?= /usr
VERSION  ?= $(shell git -c safe.directory='*' describe --tags --always --dirty 2>/dev/null || echo unknown)
FUZZTIME ?= 10s
# More arguments for go test, such as TESTFLAGS='-race -run TestRestart'.
TESTFLAGS ?=

bindir   := $(DESTDIR)$(PREFIX)/bin
mandir   := $(DESTDIR)$(PREFIX)/share/man/man8
sharedir := $(DESTDIR)$(PREFIX)/share/syscontainer-hooks
examples := hookspec.json oci-hooks.json hooks.d-createRuntime.json hooks.d-poststop.json

# sudo drops what a login shell has added to PATH, and git does not answer root about another user's clone.
export PATH := $(PATH):/usr/local/go/bin:/usr/sbin:/sbin
export GOFLAGS += -buildvcs=false
ifeq ($(CI),true)
export REQUIRE_ROOT ?= 1
endif

LINT := go tool -modfile=test/tools/go.mod golangci-lint

.PHONY: build test demo lint fuzz bench cover install uninstall clean

build: bin/syscontainer-hooks

bin/syscontainer-hooks: go.mod go.sum $(shell find cmd internal pkg -name '*.go' ! -name '*_test.go')
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o $@ ./cmd/syscontainer-hooks

test:
	test/tools/run-tests $(TESTFLAGS)

demo:
	go run ./test/demo

lint:
	go mod tidy -diff
	go vet ./...
	$(LINT) run
	test/tools/check-manual docs/syscontainer-hooks.8

# Each fuzz target for FUZZTIME.
fuzz:
	@grep -roE --include='*_test.go' '^func Fuzz\w+' cmd internal pkg | while IFS=: read -r file func; do \
		go test -run '^$$' -fuzz "^$${func#func }\$$" -fuzztime $(FUZZTIME) "./$${file%/*}" || exit; \
	done

bench:
	go test -run '^$$' -bench . -benchmem $(TESTFLAGS) \
		$$(grep -rlE --include='*_test.go' '^func Benchmark' cmd internal pkg test | sed 's|[^/]*$$||; s|^|./|' | sort -u)

# Of what the tests call directly; the end to end tests run the hook as a program of its own, which does not count here.
cover:
	go test -count=1 -coverpkg=./cmd/...,./internal/...,./pkg/... -coverprofile=coverage.out $(TESTFLAGS) \
		./cmd/... ./internal/... ./pkg/...
	go tool cover -func=coverage.out | tail -n 1

install: build
	install -D -m 0755 bin/syscontainer-hooks $(bindir)/syscontainer-hooks
	install -D -m 0644 docs/syscontainer-hooks.8 $(mandir)/syscontainer-hooks.8
	install -d $(sharedir)
	@for f in $(examples); do \
		sed 's|/usr/bin/|$(PREFIX)/bin/|' examples/$$f >$(sharedir)/$$f && chmod 0644 $(sharedir)/$$f || exit; \
	done

uninstall:
	rm -f $(bindir)/syscontainer-hooks $(mandir)/syscontainer-hooks.8 $(addprefix $(sharedir)/,$(examples))
	rmdir $(sharedir) 2>/dev/null || true

clean:
	rm -rf bin coverage.out
