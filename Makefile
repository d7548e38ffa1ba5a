# librref: see README.md. Plain make; everything built goes to build/, programs to build/bin/.
#
#   make demo | check            on this machine, over shared memory
#   make demo-roce | check-roce  over real SoftRoCE (the machine's own RDMA device, else a small virtual machine)
#   make sim SEEDS=20000         the protocol's simulator (JOBS=, ARGS='--seed 1 --trace')
#   make model                   the Spin models of docs/model/, and that planted mistakes are found
#   make all | install | deps | perf | perf-roce | perf-peers | perf-report | clean
#
# SAN=address (with UBSan) or SAN=thread builds everything under build/SAN/ with that sanitizer.

VERSION_MAJOR := 0
VERSION_MINOR := 1
VERSION_PATCH := 0
VERSION := $(VERSION_MAJOR).$(VERSION_MINOR).$(VERSION_PATCH)

PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
DESTDIR ?=

SAN ?=
B := build$(if $(SAN),/$(SAN))
BIN := $(B)/bin

CC ?= cc
CXX ?= c++
OBJCOPY ?= objcopy
# A comma inside $(if) would split its arguments.
comma := ,
# Small structs are cleared and copied by vector stores; by default gcc takes "rep stos", which costs some 40 cycles to begin.
SMALL := -mmemset-strategy=vector_loop:512:noalign$(comma)libcall:-1:noalign -mmemcpy-strategy=vector_loop:512:noalign$(comma)libcall:-1:noalign
OPT ?= -O2 -g $(if $(filter ok,$(shell $(CC) $(SMALL) -E -x c /dev/null >/dev/null 2>&1 && echo ok)),$(SMALL))
WARN := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wold-style-definition -Wformat=2 -Wundef -Wvla \
	-Wpointer-arith -Wwrite-strings -Wcast-qual
WERROR ?= $(if $(CI),-Werror)
HARDEN := -fstack-protector-strong $(if $(SAN),,-D_FORTIFY_SOURCE=2)
SANFLAGS := $(if $(filter address,$(SAN)),-fsanitize=address$(comma)undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
SANFLAGS += $(if $(filter thread,$(SAN)),-fsanitize=thread)

CPPFLAGS_ALL := -D_GNU_SOURCE -Iinclude -I. $(CPPFLAGS)
$(B)/test/%.o: CPPFLAGS_ALL += -Itest/lib
CFLAGS_ALL := -std=gnu11 $(OPT) $(WARN) $(WERROR) $(HARDEN) $(SANFLAGS) -fPIC -fvisibility=hidden -pthread $(CFLAGS)
LDFLAGS_ALL := -Wl,-z,relro,-z,now $(SANFLAGS) -pthread $(LDFLAGS)
LIBS := -libverbs -lrdmacm -lsodium -ldl -lm

# verbs/raw is what rref-perf measures against, no part of the library.
LIB_DIRS := base verbs verbs/* core alloc
LIB_SRC := $(filter-out verbs/raw/%,$(sort $(wildcard $(LIB_DIRS:%=%/*.c))))
LIB_OBJ := $(LIB_SRC:%.c=$(B)/%.o)
TLIB_OBJ := $(patsubst %.c,$(B)/%.o,$(sort $(wildcard test/lib/*.c)))
UNIT := $(patsubst test/unit/%.c,$(BIN)/unit/%,$(sort $(wildcard test/unit/*.c)))
PROC := $(patsubst test/proc/%.c,$(BIN)/proc/%,$(sort $(wildcard test/proc/*.c)))
# Attackers: a member of the group, a user without the key, another user of the machine.
ATTACK := $(patsubst test/attack/%.c,$(BIN)/attack/%,$(sort $(wildcard test/attack/*.c)))
CONF := $(patsubst test/conformance/%.c,$(BIN)/conformance/%,$(sort $(wildcard test/conformance/*.c)))
# The protocol's machine and the codec have no threads (layers.sh sees to it), nor have these tests of the arena (ra_threads_test
# has): the thread sanitizer has nothing to see.
PURE := $(patsubst test/unit/%.c,$(BIN)/unit/%,$(wildcard test/unit/rp_*.c test/unit/rw_*.c) \
	$(addprefix test/unit/,ra_arena_test.c ra_churn_test.c ra_fault_test.c slab_test.c))
SAN_UNIT := $(if $(filter thread,$(SAN)),$(filter-out $(PURE),$(UNIT)),$(UNIT))
SAN_SIM := $(if $(filter thread,$(SAN)),,$(BIN)/sim)
HOST := $(patsubst test/host/%.c,$(BIN)/host/%,$(sort $(wildcard test/host/*.c)))
# Need a device that reports READs by events.
ROCE := $(patsubst test/roce/%.c,$(BIN)/roce/%,$(sort $(wildcard test/roce/*.c)))
SIM_OBJ := $(patsubst %.c,$(B)/%.o,$(sort $(wildcard test/sim/*.c)))
SIM := $(BIN)/sim
TOOLS := $(patsubst core/tools/%.c,$(BIN)/%,$(sort $(wildcard core/tools/*.c)))
DEMO := $(if $(wildcard test/demo/*.c),$(BIN)/rref-demo)

SO := librref.so.$(VERSION_MAJOR)
STATIC := $(B)/librref.a
# What the tests link: the same, but that faults can be injected into its messages (core/rc_inject.h).
STATIC_TEST := $(B)/librref-test.a
INJECT := core/inject core/send
SHARED := $(B)/$(SO)

.PHONY: all lib tools tests san-tests demo demo-roce check check-run check-asan check-tsan check-roce sim model perf perf-parts perf-roce perf-peers perf-report deps install uninstall clean
.DEFAULT_GOAL := all
all: lib tools tests

lib: $(STATIC) $(SHARED) $(B)/librref.pc
tools: $(TOOLS) $(DEMO)
tests: $(UNIT) $(PROC) $(ATTACK) $(CONF) $(HOST) $(ROCE) $(BIN)/rref-perf $(SIM)
san-tests: $(SAN_UNIT) $(PROC) $(ATTACK) $(CONF) $(SAN_SIM)

$(B)/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS_ALL) $(CFLAGS_ALL) -MMD -MP -c $< -o $@

$(B)/inject/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS_ALL) -DRREF_INJECT $(CFLAGS_ALL) -MMD -MP -c $< -o $@

# A private jemalloc (docs/ARCHITECTURE.md, "alloc"): one relocatable object in which only the arena calls stay
# global, so that the program's malloc is not replaced, and those are renamed out of the way of a jemalloc of its own.
JEMALLOC_KEEP := mallocx rallocx dallocx sdallocx xallocx sallocx nallocx mallctl mallctlnametomib mallctlbymib \
	malloc_conf_2_conf_harder
JEMALLOC_A = $(shell $(CC) -print-file-name=libjemalloc_pic.a)
$(B)/jemalloc.o: Makefile
	@mkdir -p $(@D)
	$(LD) -r $(JEMALLOC_KEEP:%=-u %) $(JEMALLOC_A) -o $@.tmp
	$(OBJCOPY) $(JEMALLOC_KEEP:%=--keep-global-symbol=%) $@.tmp
	$(OBJCOPY) $(foreach s,$(JEMALLOC_KEEP),--redefine-sym $(s)=ra_je_$(s)) \
		$(if $(filter thread,$(SAN)),--redefine-sym pthread_atfork=ra_je_no_atfork) $@.tmp $@
	@rm -f $@.tmp

$(STATIC): $(LIB_OBJ) $(B)/jemalloc.o
	@rm -f $@
	$(AR) rcs $@ $^

$(STATIC_TEST): $(filter-out $(INJECT:%=$(B)/%.o),$(LIB_OBJ)) $(INJECT:%=$(B)/inject/%.o) $(B)/jemalloc.o
	@rm -f $@
	$(AR) rcs $@ $^

# nodelete: a thread that has used the library runs destructors of it (jemalloc's, our own) at its
# end, which may come after a dlclose.
$(SHARED): $(LIB_OBJ) $(B)/jemalloc.o core/librref.map
	$(CC) -shared $(LDFLAGS_ALL) -Wl,-z,nodelete -Wl,-soname,$(SO) -Wl,--version-script=core/librref.map \
		-o $@ $(LIB_OBJ) $(B)/jemalloc.o $(LIBS)
	ln -sf $(SO) $(B)/librref.so

$(B)/librref.pc: core/librref.pc.in Makefile
	@mkdir -p $(@D)
	sed -e 's|@PREFIX@|$(PREFIX)|; s|@LIBDIR@|$(LIBDIR)|; s|@VERSION@|$(VERSION)|' $< > $@

$(BIN)/unit/%: $(B)/test/unit/%.o $(TLIB_OBJ) $(STATIC_TEST)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ -lcmocka $(LIBS)

$(BIN)/proc/%: $(B)/test/proc/%.o $(TLIB_OBJ) $(STATIC_TEST)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ -lcmocka $(LIBS)

$(BIN)/attack/%: $(B)/test/attack/%.o $(TLIB_OBJ) $(STATIC_TEST)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ -lcmocka $(LIBS)

# Its steps are those of random schedules.
$(BIN)/unit/rp_oom_test: $(filter-out %/main.o,$(SIM_OBJ))

# The protocol's simulator: the machines are the library's own objects.
$(SIM): $(SIM_OBJ) $(B)/test/lib/tl_rpcheck.o $(STATIC)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS_ALL) -o $@ $^

$(BIN)/conformance/%: $(B)/test/conformance/%.o $(TLIB_OBJ) $(STATIC_TEST)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ -lcmocka $(LIBS)

$(BIN)/host/%: $(B)/test/host/%.o $(TLIB_OBJ) $(STATIC_TEST)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ -lcmocka $(LIBS)

$(BIN)/roce/%: $(B)/test/roce/%.o $(TLIB_OBJ) $(STATIC_TEST)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ -lcmocka $(LIBS)

# Tools see internals (rref-info asks verbs/ for devices), so they link the static library.
$(BIN)/rref-info: $(B)/core/tools/rref-info.o $(STATIC)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIBS)

# The demo is a user's program: public header, shared library.
$(BIN)/rref-demo: $(patsubst %.c,$(B)/%.o,$(sort $(wildcard test/demo/*.c))) $(SHARED)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS_ALL) -o $@ $(filter %.o,$^) -L$(B) -l:$(SO) -Wl,-rpath,'$$ORIGIN/..' -lsodium

# ---- what people type ----------------------------------------------------------------------------------------------

SCRIPTS := test/tools/layers.sh test/tools/api.sh test/tools/conformance.sh test/tools/path.sh test/tools/trace.sh test/tools/unload.sh test/tools/mode-manual.sh test/sim/mutants.sh
ALONE := test/tools/mode-poll.sh test/tools/perf.sh
RUN := test/tools/run-tests.sh
# Test programs that run beside each other. They mostly wait; the longest ones are named first.
RREF_TEST_JOBS ?= 4
export RREF_TEST_JOBS
LONG := %/mutants.sh %/mode-manual.sh %/stall_test %/fence_test $(SIM) %/abuse_test %/payload_test %/ra_arena_test %/rendezvous_hostile_test %/rv_conformance %/rv_reads %/rv_refused %/rv_ends %/rendezvous_test %/input_test %/join_test %/death_test
# What these build is built by all processors, unless the one who types says how many jobs.
ALL_CORES = $(if $(findstring -j,$(MAKEFLAGS)),,-j$(shell nproc))
ordered = $(filter $(LONG),$1) $(filter-out $(LONG),$1)

deps:
	@test/tools/deps.sh build check

demo:
	@test/tools/deps.sh build
	@$(MAKE) --no-print-directory -s $(ALL_CORES) lib tools
	@$(BIN)/rref-demo $(if $(FILE),--file $(FILE))

check: deps
	@$(MAKE) --no-print-directory -s $(ALL_CORES) all
	@$(MAKE) --no-print-directory -s check-run

check-run:
	@$(RUN) --title "unit, processes over shm, scripts" $(call ordered,$(SCRIPTS) $(SIM) $(CONF) $(PROC) $(ATTACK) $(UNIT)) --alone $(ALONE)

check-asan check-tsan: check-%: deps
	@$(MAKE) --no-print-directory -s $(ALL_CORES) SAN=$(if $(filter asan,$*),address,thread) san-tests
	@$(MAKE) --no-print-directory -s SAN=$(if $(filter asan,$*),address,thread) check-san-run

check-san-run:
	@RREF_TEST_SLOW=4 RREF_SIM_SEEDS=2000 $(RUN) --title "$(SAN) sanitizer" --timeout 600 \
		$(call ordered,$(SAN_SIM) $(CONF) $(PROC) $(ATTACK) $(SAN_UNIT))

# Over the machine's own RDMA device if it has a usable one, else in the virtual machine.
demo-roce:
	@test/tools/deps.sh build
	@$(MAKE) --no-print-directory -s $(ALL_CORES) lib tools
	@test/tools/on-roce.sh $(BIN)/rref-demo --device ibv $(if $(FILE),--file $(FILE))

check-roce: deps
	@$(MAKE) --no-print-directory -s $(ALL_CORES) all
	@test/tools/check-roce.sh

# Random schedules of the protocol, checked after every event (docs/TESTING.md). ARGS goes to the program.
sim:
	@$(MAKE) --no-print-directory -s $(SIM)
	@$(SIM) $(if $(SEEDS),--seeds $(SEEDS)) --jobs $(or $(JOBS),$(shell nproc)) $(ARGS)

# The models of docs/model/. ARGS: names of runs, --big, --keep.
model:
	@test/tools/deps.sh model
	@test/tools/model.sh $(ARGS)

PERF_OBJ := $(patsubst %.c,$(B)/%.o,$(sort $(wildcard perf/rref-perf/*.c verbs/raw/*.c)))
$(BIN)/rref-perf: $(PERF_OBJ) $(STATIC)
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ -ljson-c $(LIBS)

# perf, perf-roce: beside the raw operations of the device (ARGS goes to rref-perf). perf-peers: UCX, MPI, torch.
# perf-report: all three in the same minutes, written to docs/PERF.md.
perf:
	@test/tools/deps.sh build perf
	@$(MAKE) --no-print-directory -s $(BIN)/rref-perf $(BIN)/rref-parts
	@$(BIN)/rref-perf all $(ARGS)
	@$(BIN)/rref-parts

# The parts alone (ARGS goes to the program, --benchmark_filter=... for one); fails if one of them cannot be measured.
perf-parts:
	@test/tools/deps.sh build perf
	@$(MAKE) --no-print-directory -s $(ALL_CORES) $(BIN)/rref-parts
	@$(BIN)/rref-parts $(ARGS) >$(B)/parts.log 2>&1; status=$$?; cat $(B)/parts.log; \
		[ $$status -eq 0 ] && ! grep -q 'ERROR OCCURRED' $(B)/parts.log

perf-roce:
	@test/tools/deps.sh build perf
	@$(MAKE) --no-print-directory -s lib tools $(BIN)/rref-perf
	@RREF_VM_TIMEOUT=1500 test/tools/on-roce.sh perf/roce.sh $(ARGS)

perf-peers:
	@test/tools/deps.sh perf peers
	@perf/peers/run.sh $(ARGS)

perf-report:
	@test/tools/deps.sh build perf peers
	@$(MAKE) --no-print-directory -s lib tools $(BIN)/rref-perf $(BIN)/rref-parts $(BIN)/proc/path_test
	@perf/report.sh

$(BIN)/rref-parts: perf/parts.cc perf/parts_core.h $(B)/perf/parts_core.o $(STATIC)
	@mkdir -p $(@D)
	$(CXX) -std=c++17 $(OPT) -Wall -Wextra $(CPPFLAGS_ALL) -o $@ $< $(B)/perf/parts_core.o $(STATIC) $(LDFLAGS_ALL) -lbenchmark $(LIBS)

install: lib tools
	install -d $(DESTDIR)$(PREFIX)/include $(DESTDIR)$(LIBDIR)/pkgconfig $(DESTDIR)$(PREFIX)/bin
	install -m 644 include/rref.h $(DESTDIR)$(PREFIX)/include/
	install -m 644 $(STATIC) $(DESTDIR)$(LIBDIR)/
	install -m 755 $(SHARED) $(DESTDIR)$(LIBDIR)/librref.so.$(VERSION)
	ln -sf librref.so.$(VERSION) $(DESTDIR)$(LIBDIR)/$(SO)
	ln -sf $(SO) $(DESTDIR)$(LIBDIR)/librref.so
	sed -e 's|@PREFIX@|$(PREFIX)|; s|@LIBDIR@|$(LIBDIR)|; s|@VERSION@|$(VERSION)|' core/librref.pc.in \
		> $(DESTDIR)$(LIBDIR)/pkgconfig/librref.pc
	install -m 755 $(TOOLS) $(DESTDIR)$(PREFIX)/bin/

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/include/rref.h $(DESTDIR)$(LIBDIR)/librref.* $(DESTDIR)$(LIBDIR)/pkgconfig/librref.pc \
		$(TOOLS:$(BIN)/%=$(DESTDIR)$(PREFIX)/bin/%)

.SECONDARY:
-include $(shell find $(B) -name '*.d' 2>/dev/null)

clean:
	rm -rf build
