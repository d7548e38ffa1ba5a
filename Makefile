# librref: see README.md. Plain make; `make help` lists the targets. Everything built goes to
# build/, programs to build/bin/.
#
# SAN=address (with UBSan) or SAN=thread builds everything under build/SAN/ with that sanitizer.
# SAN=nofast builds there with all fast paths off (include/base/fast.h).
# CHECKED=1 leaves the library's assertions in what is built, under build/checked/.
# O=DIR builds in DIR instead of build/: all, lib, tools, tests, install, demo, sim, perf. The
# scripts of the tests want build/. V=1 shows the commands. DEPS=no looks for no packages.

VERSION_MAJOR := 0
VERSION_MINOR := 1
VERSION_PATCH := 0
VERSION := $(VERSION_MAJOR).$(VERSION_MINOR).$(VERSION_PATCH)

# GNU's spelling of the folders is understood too.
PREFIX ?= $(or $(prefix),/usr/local)
LIBDIR ?= $(or $(libdir),$(PREFIX)/lib)
DESTDIR ?=

SAN ?=
CHECKED ?=
O ?= build
B := $(O)$(if $(SAN),/$(SAN))$(if $(CHECKED),/checked)
BIN := $(B)/bin

CC ?= cc
CXX ?= c++
OBJCOPY ?= objcopy
# A comma inside $(if) would split its arguments.
comma := ,
# Small structs are cleared and copied by vector stores. By default gcc takes "rep stos", which
# costs some 40 cycles to begin.
BY_VECTORS := vector_loop:512:noalign$(comma)libcall:-1:noalign
SMALL := -mmemset-strategy=$(BY_VECTORS) -mmemcpy-strategy=$(BY_VECTORS)
# Asked once; again if there is no compiler yet, since a recipe may install it.
KNOWS_SMALL = $(or $(knows_small),$(eval knows_small := $(shell \
	command -v $(firstword $(CC)) >/dev/null && \
	if $(CC) $(SMALL) -E -x c /dev/null >/dev/null 2>&1; then echo yes; else echo no; fi \
	))$(knows_small))
OPT ?= -O2 -g $(if $(filter yes,$(KNOWS_SMALL)),$(SMALL))
WARN := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wold-style-definition \
	-Wformat=2 -Wundef -Wvla -Wpointer-arith -Wwrite-strings -Wcast-qual
WERROR ?= $(if $(CI),-Werror)
# A distribution's own level of it stays, and it needs an optimizing compiler.
FORTIFIED = $(findstring _FORTIFY_SOURCE,$(CPPFLAGS) $(CFLAGS) $(OPT) $(CC))
FORTIFY = $(if $(SAN)$(FORTIFIED)$(filter -O0,$(CFLAGS) $(OPT)),,-U_FORTIFY_SOURCE \
	-D_FORTIFY_SOURCE=2)
HARDEN = -fstack-protector-strong $(FORTIFY)
ASAN := -fsanitize=address$(comma)undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
SANFLAGS := $(if $(filter address,$(SAN)),$(ASAN))
SANFLAGS += $(if $(filter thread,$(SAN)),-fsanitize=thread)

CPPFLAGS_ALL := -D_GNU_SOURCE $(if $(filter nofast,$(SAN)),-DRREF_NOFAST) \
	$(if $(CHECKED),-DRREF_CHECKED) -Iinclude -I. $(CPPFLAGS)
# The headers' inline functions assert too in what links the tests' library.
$(B)/test/%.o $(B)/perf/beside.o: private CPPFLAGS_ALL += -Itest/lib -DRREF_CHECKED
$(B)/perf/fake.o $(B)/perf/fake_busy.o: private CPPFLAGS_ALL += -Itest/lib -Itest/fake \
	-DRREF_CHECKED
CFLAGS_ALL = -std=gnu11 $(OPT) $(WARN) $(WERROR) $(HARDEN) $(SANFLAGS) -fPIC -fvisibility=hidden \
	-pthread $(CFLAGS)
LDFLAGS_ALL := -Wl,-z,relro,-z,now $(SANFLAGS) -pthread $(LDFLAGS)
LIBS := -libverbs -lrdmacm -lsodium -ldl -lm

# verbs/raw is no part of the library: rref-perf compares with it.
LIB_DIRS := base verbs verbs/* core core/* alloc
LIB_SRC := $(filter-out verbs/raw/% core/tools/%,$(sort $(wildcard $(LIB_DIRS:%=%/*.c))))
LIB_OBJ := $(LIB_SRC:%.c=$(B)/%.o)
TLIB_OBJ := $(patsubst %.c,$(B)/%.o,$(sort $(wildcard test/lib/*.c)))
# Tests lie in folders by kind, then by room (docs/TESTING.md), and are built under the same names.
programs = $(patsubst test/%.c,$(BIN)/%,$(sort $(wildcard $(1:%=test/%/*.c) $(1:%=test/%/*/*.c))))
UNIT := $(call programs,unit)
PROC := $(call programs,proc)
# Attackers: a member of the group, a user without the key, another user of the machine.
ATTACK := $(call programs,attack)
CONF := $(call programs,conformance)
HOST := $(call programs,host)
# Need a device that reports READs by events.
ROCE := $(call programs,roce)
# A verbs provider for tests (test/fake/fv.h), and the tests on it: in place of the libraries.
FAKE_OBJ := $(patsubst %.c,$(B)/%.o,$(filter-out %_test.c,$(sort $(wildcard test/fake/*.c))))
FAKE := $(filter %_test,$(patsubst test/%.c,$(BIN)/%,$(sort $(wildcard test/fake/*.c))))
FAKE_LIBS = $(filter-out -libverbs -lrdmacm,$(LIBS))
# The protocol's machine and the codec have no threads (layers.sh checks it). Nor have these tests
# of the arena (threads_test has). So the thread sanitizer has nothing to see.
PURE := $(call programs,unit/protocol unit/wire) $(BIN)/unit/base/slab_test \
	$(addprefix $(BIN)/unit/alloc/,arena_test churn_test fault_test)
SAN_UNIT := $(if $(filter thread,$(SAN)),$(filter-out $(PURE),$(UNIT)),$(UNIT))
SAN_SIM := $(if $(filter thread,$(SAN)),,$(BIN)/sim)
SIM_OBJ := $(patsubst %.c,$(B)/%.o,$(sort $(wildcard test/sim/*.c)))
SIM := $(BIN)/sim
TOOLS := $(patsubst core/tools/%.c,$(BIN)/%,$(sort $(wildcard core/tools/*.c)))
DEMO := $(if $(wildcard test/demo/*.c),$(BIN)/rref-demo)

SO := librref.so.$(VERSION_MAJOR)
STATIC := $(B)/librref.a
# The tests link the same library with its assertions (include/base/assert.h). Faults can be injected
# into its messages (core/session/inject.h).
STATIC_TEST := $(B)/librref-test.a
TEST_OBJ := $(LIB_SRC:%.c=$(B)/tested/%.o)
SHARED := $(B)/$(SO)

.PHONY: all lib tools tests san-tests nofast-tests packages FORCE
.DEFAULT_GOAL := all
## the library and its tools (the default)
all: lib tools

## the library, static and shared
lib: $(STATIC) $(SHARED)
## rref-info, rref-perf and rref-demo
tools: $(TOOLS) $(DEMO) $(BIN)/rref-perf
## the test programs, into build/bin; one of them: make build/bin/proc/call/calls_test
tests: $(UNIT) $(PROC) $(FAKE) $(ATTACK) $(CONF) $(HOST) $(ROCE) $(SIM)
# TEST=read takes the scripts with that in their name, and the test programs with it in
# KIND/ROOM/NAME.
name_of = $(or $(patsubst $(BIN)/%,%,$(filter $(BIN)/%,$1)),$(notdir $1))
has_name = $(if $(findstring $(TEST),$(call name_of,$1)),$1)
named = $(if $(TEST),$(strip $(foreach t,$1,$(call has_name,$t))),$1)
san-tests: $(call named,$(SAN_UNIT) $(PROC) $(FAKE) $(ATTACK) $(CONF) $(SAN_SIM))
# Tests of processes that take fast paths. The group's meeting takes none. Some tests spend minutes
# on silence, and the others do the same things. The allocator's tests count its caches.
NOFAST_PARTS := $(CONF) $(filter-out $(BIN)/proc/group/% \
	$(addprefix $(BIN)/proc/session/,abuse_test contact_test fence_test stall_test),$(PROC)) \
	$(filter-out $(BIN)/attack/group/%,$(ATTACK)) \
	$(filter $(BIN)/unit/wire/% $(BIN)/unit/protocol/% %/slab_test %/crossing_test,$(UNIT))
nofast-tests: $(call named,$(NOFAST_PARTS))

# Targets with the library's packages alone. Everything else takes the tests' packages too.
LEAN := all lib tools install uninstall sim \
	$(STATIC) $(SHARED) $(TOOLS) $(DEMO) $(BIN)/rref-perf $(SIM)
packages:
	@test/tools/deps.sh build $(if $(filter-out $(LEAN),$(MAKECMDGOALS)),check)

# The file keeps the flags of the last build: other flags build everything anew. Every object waits
# for it, so the look for packages comes here.
FLAGS = $(strip $(CC) $(CXX) $(CPPFLAGS_ALL) $(CFLAGS_ALL) $(CXXFLAGS) $(LDFLAGS_ALL))
ifneq ($(strip $(file <$(B)/flags)),$(FLAGS))
$(B)/flags: FORCE
endif
$(B)/flags: | packages
	@mkdir -p $(@D)
	@printf '%s\n' $(call quoted,$(FLAGS)) >$@

# Says a short line for each file that is built; the command with V=1, nothing with make -s.
Q := $(if $(V),,@)
say = $(if $(V)$(findstring s,$(firstword -$(MAKEFLAGS))),,@printf '  %-6s %s\n' $1 \
	$(call quoted,$(or $2,$@)))
# Quotes a text for the shell.
quoted = '$(subst ','\'',$1)'

$(B)/%.o: %.c Makefile $(B)/flags
	@mkdir -p $(@D)
	$(call say,CC,$<)
	$(Q)$(CC) $(CPPFLAGS_ALL) $(CFLAGS_ALL) -MMD -MP -c $< -o $@

$(B)/tested/%.o: %.c Makefile $(B)/flags
	@mkdir -p $(@D)
	$(call say,CC,$<)
	$(Q)$(CC) $(CPPFLAGS_ALL) -DRREF_INJECT -DRREF_CHECKED $(CFLAGS_ALL) -MMD -MP -c $< -o $@

# A private jemalloc (docs/design/memory.md): one relocatable object in which only the arena calls
# stay global. So the program's malloc is not replaced. These calls get other names than those of a
# jemalloc of the program.
JEMALLOC_KEEP := mallocx rallocx dallocx sdallocx xallocx sallocx nallocx mallctl \
	mallctlnametomib mallctlbymib malloc_conf_2_conf_harder
JEMALLOC_A = $(shell $(CC) -print-file-name=libjemalloc_pic.a)
$(B)/jemalloc.o: Makefile $(B)/flags
	@mkdir -p $(@D)
	$(call say,LD)
	$(Q)$(LD) -r $(JEMALLOC_KEEP:%=-u %) $(JEMALLOC_A) -o $@.tmp
	$(Q)$(OBJCOPY) $(JEMALLOC_KEEP:%=--keep-global-symbol=%) $@.tmp
	$(Q)$(OBJCOPY) $(foreach s,$(JEMALLOC_KEEP),--redefine-sym $(s)=ra_je_$(s)) \
		$(if $(filter thread,$(SAN)),--redefine-sym pthread_atfork=ra_je_no_atfork) \
		$@.tmp $@
	@rm -f $@.tmp

$(STATIC): $(LIB_OBJ) $(B)/jemalloc.o
	@rm -f $@
	$(call say,AR)
	$(Q)$(AR) rcs $@ $^

$(STATIC_TEST): $(TEST_OBJ) $(B)/jemalloc.o
	@rm -f $@
	$(call say,AR)
	$(Q)$(AR) rcs $@ $^

# nodelete: a thread that has used the library runs its destructors (jemalloc's, our own) at its
# end. That may come after a dlclose.
$(SHARED): $(LIB_OBJ) $(B)/jemalloc.o core/librref.map
	$(call say,LD)
	$(Q)$(CC) -shared $(LDFLAGS_ALL) -Wl,-z,nodelete -Wl,-soname,$(SO) \
		-Wl,--version-script=core/librref.map -o $@ $(LIB_OBJ) $(B)/jemalloc.o $(LIBS)
	$(Q)ln -sf $(SO) $(B)/librref.so

# The test counts the turns of the lock.
$(BIN)/proc/value/release_batch_test: private LDFLAGS_ALL += -Wl,--wrap=rc_unlock
$(BIN)/proc/shm/look_room_test: private LDFLAGS_ALL += \
	$(addprefix -Wl$(comma)--wrap=,rc_unlock rc_held_value rc_read_look)
$(BIN)/proc/shm/look_spans_test: private LDFLAGS_ALL += -Wl,--wrap=mmap

# The tests lay a layer over the provider (test/roce/read/hold.h).
HOLDING := $(BIN)/fake/again_test $(BIN)/fake/plain_test $(BIN)/fake/unlocked_test \
	$(BIN)/roce/read/split_test $(BIN)/roce/read/in_flight_test
$(HOLDING): private LDFLAGS_ALL += -Wl,--wrap=rv_ibv_ops

# A test program of any kind, in any folder.
$(BIN)/%: $(B)/test/%.o $(TLIB_OBJ) $(STATIC_TEST)
	@mkdir -p $(@D)
	$(call say,LD)
	$(Q)$(CC) $(LDFLAGS_ALL) -o $@ $^ -lcmocka $(LIBS)

$(FAKE): $(FAKE_OBJ)
$(FAKE): private LIBS := $(FAKE_LIBS)
# Threads stop in these.
$(BIN)/fake/again_test: private LDFLAGS_ALL += -Wl,--wrap=ra_alloc,--wrap=rc_read_late
$(BIN)/fake/refuse_test: private LDFLAGS_ALL += -Wl,--wrap=rdma_destroy_id
$(BIN)/fake/strangers_test: private LDFLAGS_ALL += -Wl,--wrap=rdma_destroy_id,--wrap=rdma_reject \
	-Wl,--wrap=rdma_get_cm_event,--wrap=rvi_has_route,--wrap=malloc
# The test notes the threads that are in the arena.
$(BIN)/fake/freeze_test: private LDFLAGS_ALL += -Wl,--wrap=ra_alloc,--wrap=ra_free

# The instructions of these are counted, so they link what ships.
PATH_TEST := $(filter %/path_test,$(PROC) $(FAKE))
$(PATH_TEST): $(BIN)/%: $(B)/test/%.o $(TLIB_OBJ) \
		$(if $(SAN),$(STATIC_TEST),$(B)/tested/base/assert.o $(STATIC))
	@mkdir -p $(@D)
	$(call say,LD)
	$(Q)$(CC) $(LDFLAGS_ALL) -o $@ $^ -lcmocka $(LIBS)

# The test takes the steps of random schedules.
$(BIN)/unit/protocol/oom_test: $(filter-out %/main.o,$(SIM_OBJ))

# The protocol's simulator: the machines are the library's own files, with their assertions.
$(SIM): $(SIM_OBJ) $(B)/test/lib/tl_rpcheck.o $(STATIC_TEST)
	@mkdir -p $(@D)
	$(call say,LD)
	$(Q)$(CC) $(LDFLAGS_ALL) -o $@ $^

# Tools see internals (rref-info asks verbs/ for devices), so they link the static library.
$(BIN)/rref-info: $(B)/core/tools/rref-info.o $(STATIC)
	@mkdir -p $(@D)
	$(call say,LD)
	$(Q)$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIBS)

# The demo is a user's program: public header, shared library. It finds the library beside it, both
# where it was built and where it was installed.
$(BIN)/rref-demo: $(patsubst %.c,$(B)/%.o,$(sort $(wildcard test/demo/*.c))) $(SHARED)
	@mkdir -p $(@D)
	$(call say,LD)
	$(Q)$(CC) $(LDFLAGS_ALL) -o $@ $(filter %.o,$^) -L$(B) -l:$(SO) \
		-Wl,-rpath,'$$ORIGIN/..:$$ORIGIN/../lib' -lsodium

# ---- targets for people -------------------------------------------------------------------------
# A comment right above a target that begins with ## is its line of `make help`.

# Builds use all processors, unless -j is given. MAKEFLAGS has it only later, so the command line of
# this make is looked at. Several targets that do more than build keep their order.
ifeq ($(MAKELEVEL),0)
MAKEFLAGS += $(shell \
	{ tr '\0' '\n' </proc/$$PPID/cmdline; printf -- '%s\n' $$MAKEFLAGS; } 2>/dev/null | \
	grep -qE '^(-[a-zA-Z]*j|--jobs)' || echo -j$$(nproc))
endif
ifneq ($(filter-out lib tools tests all build/%,$(MAKECMDGOALS)),)
ifneq ($(word 2,$(MAKECMDGOALS)),)
.NOTPARALLEL:
endif
endif
# $(call build,TEXT,TARGETS) builds, and says now and then how far it is. The packages are there.
build = @+test/tools/progress.sh --make $(call quoted,$1) $(MAKE) --no-print-directory DEPS=no $2

.PHONY: help deps demo demo-roce check check-quick check-run check-asan check-tsan check-san-run \
	check-nofast check-nofast-run check-roce check-bare lint sim model pictures perf \
	perf-parts perf-roce perf-peers perf-report perf-beside perf-fake install may-install \
	uninstall clean compile_commands.json

## this list
help:
	@awk '/^## / {text = substr($$0, 4); next} text && /^[a-z]/ {sub(/:.*/, ""); \
		n = split($$0, names, " "); for (i = 1; i <= n; i++) \
			printf "  make %-22s %s\n", names[i], text} {text = ""}' \
		$(firstword $(MAKEFILE_LIST))
	@echo "Packages that are missing are installed first, as root or by sudo;" \
		"DEPS=no: none are looked for. O=DIR: builds there."

SCRIPTS := $(patsubst %,test/tools/%.sh,layers lock api examples make runner conformance promises \
	pages path report trace unload mode-manual) test/sim/mutants.sh
ALONE := test/tools/mode-poll.sh test/tools/perf.sh
RUN := test/tools/run-tests.sh
# Test programs that run beside each other. They mostly wait; the longest ones are named first.
RREF_TEST_JOBS ?= 4
export RREF_TEST_JOBS
LONG := %/mutants.sh %/make.sh %/mode-manual.sh %/stall_test %/fence_test $(SIM) %/abuse_test \
	%/payload_test %/payload_ends_test %/arena_test %/rendezvous_hostile_test \
	$(BIN)/proc/verbs/% %/rendezvous_test %/input_test %/join_test %/death_test
ordered = $(filter $(LONG),$1) $(filter-out $(LONG),$1)
# check-quick takes most of the unit tests, some programs of each other kind, fewer schedules.
QUICK := test/tools/layers.sh test/tools/pages.sh $(SIM) \
	$(filter-out $(BIN)/unit/group/rendezvous% \
	$(addprefix $(BIN)/unit/alloc/,threads_test churn_test arena_test binding_test),$(UNIT)) \
	$(addprefix $(BIN)/proc/,spine_test shutdown_test call/calls_test value/refs_test \
	op/futures_test read/batch_test) \
	$(filter-out %/messages %/beyond %/stalled,$(CONF))

## install the packages that building and the tests need
deps:
	@test/tools/deps.sh build check

## a real file, shared between processes, read while its owner is stopped, reclaimed (FILE=)
demo:
	@test/tools/deps.sh build
	$(call build,the library and its tools,lib tools)
	@$(BIN)/rref-demo $(if $(FILE),--file $(call quoted,$(FILE)))

## the tests on this machine, over shared memory (TEST=read: only rooms and names with "read")
check: deps
	$(if $(TEST),$(if $(NAMED),,$(error no test has '$(TEST)' in its name)))
	$(call build,the library and the tests,all $(TESTS))
	@$(MAKE) --no-print-directory -s DEPS=no check-run

# Scripts run programs of their own choice.
NAMED = $(call named,$(CHECKS) $(ALONE))
TESTS = $(if $(TEST),$(or $(if $(filter %.sh,$(NAMED)),tests),$(NAMED)),tests)
CHECKS = $(SCRIPTS) $(SIM) $(CONF) $(PROC) $(FAKE) $(ATTACK) $(UNIT)
HOW_LONG = echo "some seven minutes on two quiet processors; make check-quick takes two"
check-run:
	@$(if $(TEST),,$(HOW_LONG))
	@$(RUN) --title "unit, processes over shm, scripts" \
		$(call ordered,$(call named,$(CHECKS))) --alone $(call named,$(ALONE))

## a part of check after a small change, under two minutes
check-quick: deps
	$(call build,the library and the tests,lib $(filter $(BIN)/%,$(QUICK)))
	@echo "under two minutes on two quiet processors; make check runs all"
	@RREF_SIM_SEEDS=2000 $(RUN) --title "quick: unit, some processes over shm" \
		$(call ordered,$(QUICK))

sanitizer = $(if $(filter asan,$1),address,thread)
## the tests under a sanitizer: of addresses and undefined behaviour (asan), of threads (tsan)
check-asan check-tsan: check-%: deps
	$(call build,the tests with the sanitizer,SAN=$(call sanitizer,$*) san-tests)
	@$(MAKE) --no-print-directory -s DEPS=no SAN=$(call sanitizer,$*) check-san-run

check-san-run:
	@echo "some four minutes on two quiet processors"
	@RREF_TEST_SLOW=$${RREF_TEST_SLOW:-4} RREF_SIM_SEEDS=2000 $(RUN) \
		--title "$(SAN) sanitizer" --timeout 600 \
		$(call ordered,$(call named,$(SAN_SIM) $(CONF) $(PROC) $(FAKE) $(ATTACK) \
			$(SAN_UNIT)))

## the tests of processes with all fast paths off: the general ways do the same
check-nofast: deps
	$(call build,the tests without fast paths,SAN=nofast nofast-tests)
	@$(MAKE) --no-print-directory -s DEPS=no SAN=nofast check-nofast-run

check-nofast-run:
	@echo "some three minutes on two quiet processors"
	@$(RUN) --title "no fast paths" $(call ordered,$(call named,$(NOFAST_PARTS)))

# Machines with an RDMA device of their own need no virtual one, most of the time.
GUEST := $(if $(wildcard /sys/class/infiniband/*),,roce)
# Takes the machine's own RDMA device if it has a usable one, else the virtual machine.
## the demo over RDMA: this machine's device, else SoftRoCE in a small virtual machine
demo-roce:
	@test/tools/deps.sh build $(GUEST)
	$(call build,the library and its tools,lib tools)
	@test/tools/on-roce.sh $(BIN)/rref-demo --device ibv \
		$(if $(FILE),--file $(call quoted,$(FILE)))

## the tests over RDMA: this machine's device, else SoftRoCE in small virtual machines
check-roce:
	@test/tools/deps.sh build check roce
	$(call build,the library and the tests,all tests)
	@test/tools/check-roce.sh

## each target as the first command on a bare Debian 12 (as root; downloads)
check-bare:
	@test/tools/deps.sh bare
	@test/tools/bare.sh $(ARGS)

# SHOW=WORD lists the places of the measures with that word in their name. LOWER=1 writes the better
# counts into test/tools/lint.txt.
## count prose, width, names, format, layers, sizes; a worse count fails (SHOW=names, LOWER=1)
lint:
	@test/tools/deps.sh build lint
	$(call build,the library,lib $(STATIC_TEST))
	@test/tools/lint.sh $(if $(SHOW),--show $(SHOW)) $(if $(LOWER),--lower)

# Random schedules of the protocol, checked after every event (docs/TESTING.md). ARGS goes to the
# program.
## the protocol's simulator (SEEDS=, JOBS=, ARGS='--seed 1 --trace')
sim:
	@test/tools/deps.sh build
	$(call build,the simulator,$(SIM))
	@$(SIM) $(if $(SEEDS),--seeds $(SEEDS)) --jobs $(or $(JOBS),$(shell nproc)) $(ARGS)

## the pictures of the pages, from the texts beside them
pictures:
	@python3 docs/pictures/draw.py docs/pictures/*.txt

# The models of docs/model/. ARGS: names of runs, --big, --keep.
## the Spin models of docs/model/, with planted mistakes that they find (ARGS=NAME: one run)
model:
	@test/tools/deps.sh model
	@test/tools/model.sh $(ARGS)

PERF_OBJ := $(patsubst %.c,$(B)/%.o,$(sort $(wildcard perf/rref-perf/*.c verbs/raw/*.c)))
$(BIN)/rref-perf: $(PERF_OBJ) $(STATIC)
	@mkdir -p $(@D)
	$(call say,LD)
	$(Q)$(CC) $(LDFLAGS_ALL) -o $@ $^ -ljson-c $(LIBS)

# ARGS goes to rref-perf.
## the speed beside the raw operations of the device: over shared memory
perf:
	@test/tools/deps.sh build perf
	$(call build,the library and its measures,$(BIN)/rref-perf $(BIN)/rref-parts)
	@$(BIN)/rref-perf all $(ARGS)
	@$(BIN)/rref-parts

# The parts alone (ARGS goes to the program, --benchmark_filter=... for one). Fails if a part cannot
# be measured.
## the cost of the library's parts by themselves
perf-parts:
	@test/tools/deps.sh build perf
	$(call build,the library and its measures,$(BIN)/rref-parts)
	@{ $(BIN)/rref-parts $(ARGS) 2>&1; echo "status $$?"; } | \
		tee $(B)/parts.log | grep -v '^status '; \
		grep -q '^status 0$$' $(B)/parts.log && ! grep -q 'ERROR OCCURRED' $(B)/parts.log

## the speed beside the raw operations of the device: over RDMA
perf-roce:
	@test/tools/deps.sh build perf $(GUEST)
	$(call build,the library and its measures,lib tools)
	@RREF_VM_TIMEOUT=1500 test/tools/on-roce.sh perf/roce.sh $(ARGS)

## the speed beside UCX, MPI and torch, which it installs (more than 1 GB; asks, or YES=1)
perf-peers:
	@test/tools/deps.sh build perf peers
	$(call build,the library and its measures,$(BIN)/rref-perf)
	@perf/peers/run.sh $(ARGS)

REPORTED := lib tools $(BIN)/rref-parts $(PATH_TEST) $(BIN)/rref-fake
## perf, perf-parts, perf-peers together, written to docs/PERF.md (more than 1 GB; asks, or YES=1)
perf-report:
	@test/tools/deps.sh build check perf peers $(GUEST)
	$(call build,the library and its measures,$(REPORTED))
	@perf/report.sh

$(BIN)/rref-beside: $(B)/perf/beside.o $(TLIB_OBJ) $(B)/tested/base/assert.o $(STATIC)
	@mkdir -p $(@D)
	$(call say,LD)
	$(Q)$(CC) $(LDFLAGS_ALL) -o $@ $^ -lcmocka $(LIBS)

# ARGS: windows of each kind, and a part of one attacker's name.
## the rate of an honest pair beside each attacker over shared memory
perf-beside:
	@test/tools/deps.sh build check
	$(call build,the library and the attackers,$(BIN)/rref-beside)
	@$(BIN)/rref-beside $(ARGS)

FAKE_PERF := fake fake_busy rref-perf/measure rref-perf/tails rref-perf/out
$(BIN)/rref-fake: $(FAKE_PERF:%=$(B)/perf/%.o) $(FAKE_OBJ) $(TLIB_OBJ) \
		$(B)/tested/base/assert.o $(STATIC)
	@mkdir -p $(@D)
	$(call say,LD)
	$(Q)$(CC) $(LDFLAGS_ALL) -o $@ $^ -lcmocka -ljson-c $(FAKE_LIBS)

# ARGS: threads OWNERS ROUNDS, or busy SECONDS.
## reads with many threads over fake devices: the ceiling of the library over ibv
perf-fake:
	@test/tools/deps.sh build check perf
	$(call build,the library and the fake devices,$(BIN)/rref-fake)
	@$(BIN)/rref-fake $(ARGS)

$(BIN)/rref-parts: perf/parts.cc perf/parts_core.h $(B)/perf/parts_core.o $(STATIC)
	@mkdir -p $(@D)
	$(call say,CXX)
	$(Q)$(CXX) -std=c++17 $(OPT) -Wall -Wextra $(CPPFLAGS_ALL) $(CXXFLAGS) -o $@ $< \
		$(B)/perf/parts_core.o $(STATIC) $(LDFLAGS_ALL) -lbenchmark $(LIBS)

# The folders are quoted, since they may hold spaces. Relative ones are below this folder.
TO := test/tools/install.sh $(call quoted,$(DESTDIR)) $(call quoted,$(PREFIX)) \
	$(call quoted,$(LIBDIR)) $(VERSION)
may-install:
	@$(TO) may
packages: $(filter may-install,$(MAKECMDGOALS:install=may-install))

## install into PREFIX (/usr/local), LIBDIR (PREFIX/lib), below DESTDIR
install: may-install lib tools
	@$(TO) install $(call quoted,$(STATIC)) $(call quoted,$(SHARED)) $(TOOLS) $(DEMO) \
		$(BIN)/rref-perf

## remove the installed files (same variables as install)
uninstall:
	@$(TO) uninstall $(notdir $(TOOLS) $(DEMO) $(BIN)/rref-perf)

# The rules' own commands, as make would run them.
## how each C file is compiled, for editors and the tools of clang
compile_commands.json:
	@mkdir -p $(B)
	@$(MAKE) --no-print-directory -nB V=1 DEPS=no \
		all tests $(BIN)/rref-beside $(BIN)/rref-fake $(BIN)/rref-parts >$(B)/commands
	@dir=$(call quoted,$(CURDIR)) \
		awk -f test/tools/commands.awk $(B)/commands >$(B)/commands.json
	@mv $(B)/commands.json $@

## remove build/ and compile_commands.json
clean:
	rm -rf build compile_commands.json

.SECONDARY:
-include $(shell \
	find $(B) \( -name bare -o -name vm \) -prune -o -type f -name '*.d' -print 2>/dev/null)
