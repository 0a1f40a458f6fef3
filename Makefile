# Makefile - builds Spillway out of tree, into $(BUILD); `make help` lists the targets.
#
# One thing to know: another kind of build (sanitizers, clang, small pages) is this same file run with another BUILD and other flags, so
# that kinds never share an object.  When the flags of a folder change, everything in it is rebuilt.

BUILD ?= build
PREFIX ?= /usr/local
DESTDIR ?=
DEBUG ?= 0
V ?= 0
PKG_CONFIG ?= pkg-config

ifeq ($(DEBUG),1)
CFLAGS ?= -O0 -g
else
CFLAGS ?= -O2 -g
endif
Q := $(if $(filter 1,$(V)),,@)
say = $(if $(filter 1,$(V)),,@printf '  %-5s %s\n' $(1) $(2))

VERSION := $(shell sed -n 's/^.define SPW_VERSION "\(.*\)"/\1/p' include/spillway.h)
SOVERSION := $(firstword $(subst ., ,$(VERSION)))
MACHINE := $(firstword $(subst -, ,$(shell $(CC) -dumpmachine 2>/dev/null)))

# ---- sources -------------------------------------------------------------------------------------------------------------------

FOLDERS := base kern model dev kv measure policy plan engine
SRC := $(wildcard src/*/*.c)
# Kernels of other processors are left out; where there are none of its own, the portable ones serve.
ifeq ($(filter x86_64 i686 amd64,$(MACHINE)),)
SRC := $(filter-out src/kern/kern_avx%,$(SRC))
endif
ifeq ($(filter aarch64 arm64,$(MACHINE)),)
SRC := $(filter-out src/kern/kern_neon%,$(SRC))
endif
# CORE=1: the library without what needs pcre2, for a cross compiler that has none.  Enough for the tests of CORE_TESTS.
ifeq ($(CORE),1)
SRC := $(filter-out $(shell grep -l 'include <pcre2' $(SRC)),$(SRC))
endif
CORE_TESTS := test_base test_pool test_quant test_math test_attend test_attend_q8 test_attend_many test_select test_index test_pack test_kv test_kv_q8 test_kv_index test_numa test_plan
APPS := $(wildcard apps/*.c)
EXAMPLES := $(patsubst examples/%.c,%,$(wildcard examples/*.c))
C_TESTS := $(patsubst tests/%.c,%,$(wildcard tests/test_*.c))
FUZZERS := $(patsubst fuzz/%.c,%,$(wildcard fuzz/fuzz_*.c))
REPLAYS := $(FUZZERS:fuzz_%=replay_%)
PY_TESTS := $(notdir $(wildcard tests/test_*.py))
SH_TESTS := $(notdir $(wildcard tests/test_*.sh))
BUILD_SH_TESTS := test_install.sh test_examples.sh # these build again with plain flags: once is enough
MAN := $(wildcard docs/*.1)

LIB_OBJ := $(SRC:%.c=$(BUILD)/%.o)
APP_OBJ := $(APPS:%.c=$(BUILD)/%.o)

# ---- libraries -----------------------------------------------------------------------------------------------------------------

# pc(package, plain linker flag): what pkg-config says, else the plain flag; has(package, preprocessor text): whether it can be included.
pc = $(or $(shell $(PKG_CONFIG) --libs $(1) 2>/dev/null),$(2))
has = $(shell $(PKG_CONFIG) --exists $(1) 2>/dev/null && echo yes || { printf '%b\n' '$(2)' | $(CC) $(CPPFLAGS) -E - >/dev/null 2>&1 && echo yes; })
hash := \#

# Empty when nothing is built into $(BUILD) itself.
BUILDS := $(if $(MAKECMDGOALS),$(filter-out check stress asan tsan clang neon neon-least fuzz clean help uninstall,$(MAKECMDGOALS)),all)
ifneq ($(BUILDS),)
ifeq ($(shell command -v $(firstword $(CC))),)
$(error no C compiler "$(CC)": install Debian package gcc, or run ./quickstart)
endif
ifneq ($(CORE),1)
ifneq ($(call has,libpcre2-8,$(hash)define PCRE2_CODE_UNIT_WIDTH 8\n$(hash)include <pcre2.h>),yes)
$(error the library pcre2 is missing: install Debian package libpcre2-dev, or run ./quickstart)
endif
ifneq ($(call has,jansson,$(hash)include <jansson.h>),yes)
$(error the library jansson is missing: install Debian package libjansson-dev, or run ./quickstart)
endif
endif
endif

LIB_LIBS := $(if $(filter 1,$(CORE)),,$(call pc,libpcre2-8,-lpcre2-8)) -lm
APP_LIBS := $(call pc,jansson,-ljansson)
LIB_CPPFLAGS := $(shell $(PKG_CONFIG) --cflags libpcre2-8 2>/dev/null)
APP_CPPFLAGS := $(shell $(PKG_CONFIG) --cflags jansson 2>/dev/null)
ifeq ($(shell $(PKG_CONFIG) --exists libedit 2>/dev/null && echo yes),yes)
APP_LIBS += $(shell $(PKG_CONFIG) --libs libedit)
APP_CPPFLAGS += -DHAVE_LIBEDIT $(shell $(PKG_CONFIG) --cflags libedit)
endif

# ---- flags ---------------------------------------------------------------------------------------------------------------------

# -ffp-contract=off: a multiplication and an addition are fused where a kernel says so and nowhere else, or the bits of a result would
# depend on the compiler's mood (docs/NUMERICS.md).
BASE_CFLAGS := -std=c11 -fPIC -pthread -ffp-contract=off -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes -Werror
BASE_CPPFLAGS := -D_GNU_SOURCE $(if $(filter 1,$(DEBUG)),-DSPW_DEBUG)
SRC_INC := -Iinclude $(FOLDERS:%=-Isrc/%)
COMPILE = $(CC) $(BASE_CPPFLAGS) $(CPPFLAGS) $(BASE_CFLAGS) $(CFLAGS)
LINK = $(CC) -pthread $(CFLAGS) $(LDFLAGS)

# Kernels are loops worth -O3, unless the user asked for code that can be debugged; and each begins on a cache line of its own: where else it happens to lie
# costs up to a sixth of its speed.
KERN_OPT := $(if $(filter -O0 -O1 -Og,$(CFLAGS)),,-O3 -falign-functions=64)
$(BUILD)/src/kern/kern_avx2_%.o: FILE_FLAGS = $(KERN_OPT) -mavx2 -mfma -mf16c
$(BUILD)/src/kern/kern_avx512_%.o: FILE_FLAGS = $(KERN_OPT) -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c -mprefer-vector-width=512
$(BUILD)/src/kern/kern_avx512vnni_%.o: FILE_FLAGS = $(KERN_OPT) -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mfma -mf16c -mprefer-vector-width=512
$(BUILD)/src/kern/kern_avx512vbmi_%.o: FILE_FLAGS = $(KERN_OPT) -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vbmi -mavx512vbmi2 -mfma -mf16c -mprefer-vector-width=512
$(BUILD)/src/kern/kern_avx512bf16_%.o: FILE_FLAGS = $(KERN_OPT) -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512bf16 -mprefer-vector-width=512
$(BUILD)/src/kern/kern_neon_%.o: FILE_FLAGS = $(KERN_OPT)
$(BUILD)/src/kern/kern_neondot_%.o: FILE_FLAGS = $(KERN_OPT) -march=armv8.2-a+dotprod
$(BUILD)/src/policy/policy_adaptive.o: FILE_FLAGS = $(KERN_OPT)

# ---- program and libraries -----------------------------------------------------------------------------------------------------

.PHONY: all program install uninstall tests test check check-long stress asan tsan clang neon neon-least fuzz compdb clean help
.DELETE_ON_ERROR:
.SECONDARY:

all: program $(BUILD)/libspillway.so

program: $(BUILD)/spillway $(BUILD)/libspillway.a

# Rewritten, as the Makefile is read, only when the flags change: every object depends on it.
FLAGS_TEXT = $(COMPILE) | $(LINK) | $(LIB_LIBS) | $(APP_CPPFLAGS) $(APP_LIBS) | $(KERN_OPT)
ifneq ($(BUILDS),)
ifneq ($(file <$(BUILD)/flags),$(FLAGS_TEXT))
$(shell mkdir -p $(BUILD))
$(file >$(BUILD)/flags,$(FLAGS_TEXT))
endif
endif

$(BUILD)/src/%.o: src/%.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(call say,CC,$<)
	$(Q)$(COMPILE) $(FILE_FLAGS) $(SRC_INC) $(LIB_CPPFLAGS) -MMD -MP -c $< -o $@

# An application sees the public header alone.
$(BUILD)/apps/%.o: apps/%.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(call say,CC,$<)
	$(Q)$(COMPILE) -Iinclude -Iapps $(APP_CPPFLAGS) -MMD -MP -c $< -o $@

$(BUILD)/libspillway.a: $(LIB_OBJ)
	$(call say,AR,$@)
	$(Q)rm -f $@ && $(AR) rcs $@ $(LIB_OBJ)

# What the shared library exports: the functions that the public headers declare, and nothing else.
$(BUILD)/libspillway.map: $(wildcard include/*.h)
	@mkdir -p $(@D)
	$(Q){ echo '{ global:'; grep -ho 'spw_[a-z0-9_]*(' $^ | sort -u | sed 's/($$/;/'; echo 'local: *; };'; } >$@

$(BUILD)/libspillway.so: $(LIB_OBJ) $(BUILD)/libspillway.map
	$(call say,LD,$@)
	$(Q)$(LINK) -shared -Wl,-soname,libspillway.so.$(SOVERSION) -Wl,--version-script=$(BUILD)/libspillway.map $(LIB_OBJ) $(LIB_LIBS) -o $@
	$(Q)ln -sf libspillway.so $(BUILD)/libspillway.so.$(SOVERSION)

$(BUILD)/spillway: $(APP_OBJ) $(BUILD)/libspillway.a
	$(call say,LD,$@)
	$(Q)$(LINK) $(APP_OBJ) $(BUILD)/libspillway.a $(APP_LIBS) $(LIB_LIBS) -o $@

# ---- install -------------------------------------------------------------------------------------------------------------------

ROOT = $(DESTDIR)$(PREFIX)
SO_FILE := libspillway.so.$(VERSION)

install: all
	install -d '$(ROOT)/bin' '$(ROOT)/lib/pkgconfig' '$(ROOT)/include' '$(ROOT)/share/man/man1'
	install -m 755 $(BUILD)/spillway '$(ROOT)/bin/spillway'
	install -m 644 $(BUILD)/libspillway.a '$(ROOT)/lib/libspillway.a'
	install -m 755 $(BUILD)/libspillway.so '$(ROOT)/lib/$(SO_FILE)'
	ln -sf $(SO_FILE) '$(ROOT)/lib/libspillway.so.$(SOVERSION)'
	ln -sf $(SO_FILE) '$(ROOT)/lib/libspillway.so'
	install -m 644 $(wildcard include/*.h) '$(ROOT)/include/'
	sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@VERSION@|$(VERSION)|' spillway.pc.in >'$(ROOT)/lib/pkgconfig/spillway.pc'
	chmod 644 '$(ROOT)/lib/pkgconfig/spillway.pc'
	$(if $(MAN),install -m 644 $(MAN) '$(ROOT)/share/man/man1/')

uninstall:
	rm -f '$(ROOT)/bin/spillway' '$(ROOT)/lib/libspillway.a' '$(ROOT)/lib/$(SO_FILE)' '$(ROOT)/lib/libspillway.so.$(SOVERSION)' \
	      '$(ROOT)/lib/libspillway.so' '$(ROOT)/lib/pkgconfig/spillway.pc' \
	      $(patsubst include/%,'$(ROOT)/include/%',$(wildcard include/*.h)) $(patsubst docs/%,'$(ROOT)/share/man/man1/%',$(MAN))

# ---- tests and examples --------------------------------------------------------------------------------------------------------

# Everything that `make test` runs.  TESTS="test_pool test_cli.py" runs these alone.
TESTS ?= $(C_TESTS) $(REPLAYS) $(PY_TESTS) $(SH_TESTS)

# The one test of parts of the program; they need neither a model nor jansson.
EVAL_OBJ := $(addprefix $(BUILD)/apps/,eval_tasks.o eval_ruler.o eval_policies.o eval_divergence.o budget.o text_input.o)
$(BUILD)/tests/test_eval_tasks: $(EVAL_OBJ)
$(BUILD)/tests/test_eval_tasks: TEST_WITH = -Iapps $(EVAL_OBJ)

$(BUILD)/tests/%: tests/%.c $(BUILD)/libspillway.a $(BUILD)/flags
	@mkdir -p $(@D)
	$(call say,TEST,$@)
	$(Q)$(COMPILE) $(SRC_INC) -Itests $(LIB_CPPFLAGS) -MMD -MP -MF $@.d $(LDFLAGS) $< $(TEST_WITH) $(BUILD)/libspillway.a $(LIB_LIBS) -o $@

# A fuzz target with a main that feeds it the files of its corpus: the same check on any compiler.
$(BUILD)/fuzz/replay_%: fuzz/fuzz_%.c fuzz/replay.c $(BUILD)/libspillway.a $(BUILD)/flags
	@mkdir -p $(@D)
	$(call say,TEST,$@)
	$(Q)$(COMPILE) $(SRC_INC) -Itests -Ifuzz $(LDFLAGS) fuzz/replay.c $< $(BUILD)/libspillway.a $(LIB_LIBS) -o $@

# Examples are what a user would write: the public header and nothing else.
$(BUILD)/examples/%: examples/%.c $(BUILD)/libspillway.a $(BUILD)/flags
	@mkdir -p $(@D)
	$(call say,CC,$@)
	$(Q)$(COMPILE) -Iinclude -MMD -MP -MF $@.d $(LDFLAGS) $< $(BUILD)/libspillway.a $(LIB_LIBS) -o $@

tests: program $(C_TESTS:%=$(BUILD)/tests/%) $(REPLAYS:%=$(BUILD)/fuzz/%) $(EXAMPLES:%=$(BUILD)/examples/%)

# Only what the chosen tests need.
test: $(if $(filter %.py %.sh,$(TESTS)),program) $(patsubst %,$(BUILD)/tests/%,$(filter-out %.py %.sh replay_%,$(TESTS))) \
      $(patsubst %,$(BUILD)/fuzz/%,$(filter replay_%,$(TESTS)))
	@tools/run_tests.sh '$(BUILD)' $(TESTS)

check:
	./check

# One prompt of 128K tokens, twenty questions about it: some twenty minutes on two cores, for each of two policies.
check-long: program $(BUILD)/tests/long_needle
	SPILLWAY_BUILD='$(BUILD)' python3 tests/test_needle.py --long

# The store with pages of four positions: every page boundary is crossed in every test.
stress:
	@$(MAKE) test BUILD=$(BUILD)/stress CPPFLAGS='$(CPPFLAGS) -DKV_PAGE_ROWS=4 -DSPW_DEBUG' TESTS='$(filter test_kv% test_store%,$(C_TESTS))'

# The whole suite under the address and undefined-behaviour sanitizers; -O1, or it takes an hour.  test_needle.py is arithmetic on tens of
# thousands of positions and nothing else: test_engine walks the same code.  TEST_SANITIZED tells the other scripts to leave out tests that are mostly arithmetic.
SAN_CFLAGS := -O1 -g -fno-omit-frame-pointer
asan:
	@TEST_SANITIZED=1 $(MAKE) test BUILD=$(BUILD)/asan CPPFLAGS='$(CPPFLAGS) -DSPW_DEBUG' CFLAGS='$(SAN_CFLAGS) -fsanitize=address,undefined -fno-sanitize-recover=all' \
	  TESTS='$(C_TESTS) $(REPLAYS) $(filter-out test_needle.py,$(PY_TESTS)) $(filter-out $(BUILD_SH_TESTS),$(SH_TESTS))'

tsan:
	@$(MAKE) test BUILD=$(BUILD)/tsan CPPFLAGS='$(CPPFLAGS) -DSPW_DEBUG' CFLAGS='$(SAN_CFLAGS) -fsanitize=thread' \
	  TESTS='$(filter test_pool% test_plan% test_kv% test_store%,$(C_TESTS))'

clang:
	@$(MAKE) all tests test BUILD=$(BUILD)/clang CC=clang TESTS='$(C_TESTS) $(REPLAYS)'

# The kernels of AArch64 and what they stand on, on any machine: by a cross compiler (Debian packages gcc-aarch64-linux-gnu, libc6-dev-arm64-cross) and
# an emulator of the processor (qemu-user), as a processor that has everything; neon-least: what depends on that, as one that has the least.
NEON_CC ?= aarch64-linux-gnu-gcc
NEON_RUNNER ?= qemu-aarch64 -L /usr/aarch64-linux-gnu
neon:
	@RUNNER='$(NEON_RUNNER)' $(MAKE) test BUILD=$(BUILD)/neon CC='$(NEON_CC)' CORE=1 TESTS='$(CORE_TESTS)'
neon-least:
	@RUNNER='$(NEON_RUNNER) -cpu cortex-a53' $(MAKE) test BUILD=$(BUILD)/neon CC='$(NEON_CC)' CORE=1 TESTS='test_pool test_pack'

# libFuzzer programs; run one as build/fuzz/fuzz_gguf fuzz/corpus/gguf.
FUZZ_CFLAGS := -O1 -g -fno-omit-frame-pointer -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all
fuzz:
	@$(MAKE) fuzz-programs BUILD=$(BUILD)/libfuzzer CC=clang CPPFLAGS='$(CPPFLAGS) -DSPW_DEBUG' CFLAGS='$(FUZZ_CFLAGS)'
	@mkdir -p $(BUILD)/fuzz
	$(Q)$(foreach f,$(FUZZERS),ln -sf ../libfuzzer/$(f) $(BUILD)/fuzz/$(f);)
	@echo 'Built: $(FUZZERS:%=$(BUILD)/fuzz/%)'

.PHONY: fuzz-programs
fuzz-programs: $(FUZZERS:%=$(BUILD)/%)
$(BUILD)/fuzz_%: fuzz/fuzz_%.c $(BUILD)/libspillway.a
	$(call say,FUZZ,$@)
	$(Q)$(COMPILE) -fsanitize=fuzzer $(SRC_INC) -Itests -Ifuzz $< $(BUILD)/libspillway.a $(LIB_LIBS) -o $@

# compile_commands.json for editors.
compdb:
	@mkdir -p $(BUILD)
	@{ echo '['; for f in $(SRC) $(APPS) $(wildcard tests/*.c fuzz/*.c examples/*.c); do \
	    printf '{"directory": "%s", "file": "%s", "command": "%s"},\n' "$$PWD" "$$f" \
	      '$(COMPILE) $(SRC_INC) -Iapps -Itests -Ifuzz $(APP_CPPFLAGS) -c '"$$f"; done | sed '$$s/,$$//'; echo ']'; } >$(BUILD)/compile_commands.json

clean:
	rm -rf $(filter-out $(BUILD)/models,$(wildcard $(BUILD)/*))

help:
	@echo 'make              build/spillway, build/libspillway.a, build/libspillway.so'
	@echo 'make install      into DESTDIR PREFIX (/usr/local): bin, lib, include, pkg-config file, manual page; uninstall undoes it'
	@echo 'make test         build and run every test; TESTS="test_pool test_cli.py" runs these alone'
	@echo 'make check        what ./check does: all of the below but check-long, and set-up first'
	@echo 'make check-long   retrieval at 128K positions: 40 minutes'
	@echo 'make asan         the suite under the address and undefined-behaviour sanitizers'
	@echo 'make tsan         the pool and the store under the thread sanitizer'
	@echo 'make clang        everything built by clang, and the C tests'
	@echo 'make neon         the kernels of AArch64 by a cross compiler, and their tests in an emulator; neon-least: of the least such processor'
	@echo 'make stress       the store with pages of four positions'
	@echo 'make fuzz         libFuzzer programs into build/fuzz (clang)'
	@echo 'make compdb       build/compile_commands.json'
	@echo 'make clean        removes what was built, keeps build/models'
	@echo 'Variables: BUILD CC CFLAGS CPPFLAGS LDFLAGS DEBUG=1 V=1 CORE=1 PREFIX DESTDIR'

-include $(LIB_OBJ:.o=.d) $(APP_OBJ:.o=.d) $(wildcard $(BUILD)/tests/*.d $(BUILD)/examples/*.d)
