#!/usr/bin/env bash
# The direction of calls: user -> rref_* -> core -> {verbs, alloc}. Tests of
# verbs/ibv itself, and the fake of it, may see verbs. Checked on the sources (includes) and on the
# objects (undefined symbols). So neither a header nor an extern can slip past.
#   layers.sh [BUILD_DIR]
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
. test/tools/check.sh
build=${1:-build}

empty "only verbs/ includes <infiniband/...> or <rdma/...>" \
	"$(grep -rnE '#[[:space:]]*include[[:space:]]*<(infiniband|rdma)/' --include='*.[ch]' . |
	grep -vE '^\./(verbs/|build/|test/unit/ibv/|test/fake/)')"
empty "verbs/shm is free of them too" \
	"$(grep -rnE '#[[:space:]]*include[[:space:]]*<(infiniband|rdma)/' verbs/shm \
	verbs/rv.h verbs/rv_error.h)"
empty "verbs/ includes neither core/ nor alloc/ nor the public header" \
	"$(grep -rnE '#[[:space:]]*include[[:space:]]*"(\.\./)*(core/|alloc/|rref\.h|rref/)' verbs)"
empty "alloc/ includes neither core/ nor verbs/ nor the public header" \
	"$(grep -rnE '#[[:space:]]*include[[:space:]]*"(\.\./)*(core/|verbs/|rref\.h|rref/)' alloc)"
empty "the protocol includes nothing but itself, the public header and the base" \
	"$(grep -nE '#[[:space:]]*include' core/protocol/*.[ch] |
	grep -vE '"(core/protocol/[a-z_]*\.h|rref\.h|base/[a-z]*\.h)"' |
	grep -vE '<(errno|stdbool|stddef|stdint|stdlib|string|stdio|assert|limits|inttypes)\.h>')"
own=$(cd test/demo && ls *.h | sed 's/\./\\./' | paste -sd'|')
empty "the demo includes only its own headers and the public one" \
	"$(grep -rnE '#[[:space:]]*include[[:space:]]*"' test/demo |
	grep -vE "\"(rref\\.h|$own)\"")"

empty "base/ includes nothing of the layers" \
	"$(grep -rnE '#[[:space:]]*include[[:space:]]*"' base include/base | grep -vE '"base/')"

undefined() { # OBJECTS: their undefined symbols, with the object's name
	nm -u -A "$@" 2>/dev/null | awk '{print $1, $NF}'
}
empty "verbs/ objects call nothing of the layers above" \
	"$(undefined $(find "$build/verbs" -name '*.o') | grep -E ' (rref_|rc_|rp_|rw_|ra_)')"
empty "alloc/ objects call nothing of the other layers" \
	"$(undefined $(find "$build/alloc" -name '*.o') |
	grep -E ' (rref_|rc_|rp_|rw_|rv_)' | grep -v ' ra_')"
empty "base/ objects call nothing of the other layers" \
	"$(undefined $(find "$build/base" -name '*.o') | grep -E ' (rref_|r[cpwav]_)')"
# Purity: events in, effects out. A state machine may need memory and strings of libc, nothing else.
memory='malloc|calloc|realloc|reallocarray|free|aligned_alloc|mem[a-z]*|__mem[a-z]*_chk'
string='str[a-z]*|__str[a-z]*_chk|snprintf|__snprintf_chk|vsnprintf|__vsnprintf_chk'
compiler='__stack_chk_fail|_GLOBAL_OFFSET_TABLE_|__(asan|ubsan|tsan)_[a-z0-9_]*'
empty "the protocol's objects call nothing but memory and string functions" \
	"$(undefined "$build"/core/protocol/*.o |
	grep -vE " (rp_[a-z0-9_]*|$memory|$string|abort|__assert_fail|$compiler)\$")"

empty "reads ask what a device can do, not which one it is" "$(grep -rnE 'RV_(SHM|IBV)' core/read)"

# The rooms of core/: see rooms.py. Both numbers may only fall: names called upwards, and objects in
# the largest circle.
read -r up circle < <(test/tools/rooms.py "$build")
check "core/: at most 0 names are called upwards (now $up)" [ "${up:-99}" -le 0 ]
check "core/: at most 6 objects call each other in a circle (now $circle)" [ "${circle:-99}" -le 6 ]

empty "core/: a room includes no header of a room above it" \
	"$(test/tools/rooms.py "$build" includes)"

# printf's %f and strtod take the decimal point from the program's locale (include/base/util.h has
# decimal_text).
empty "no number of the library depends on the locale" \
	"$(grep -rnE -e '"[^"]*%[-+ #0-9.*]*(l?[aAeEfFgG]([^a-zA-Z]|s"|$)|\x27)' \
	-e '\<(strtod|strtof|strtold|atof|setlocale)\>' \
	--include='*.[ch]' core alloc verbs include |
	grep -vE '^(core/tools|verbs/raw)/')"

# Assertions are for the tests (include/base/assert.h).
noted='rb_assert_failed|__assert_fail|rb_(slow|hold_begin|hold_end)|rc_lock_(taken|given|is_mine)'
asserting() { # FILES: their objects and members that can fail an assertion, or note a lock
	undefined "$@" | grep -E " ($noted)\$"
}
empty "no object that ships asserts" \
	"$(asserting "$build/librref.a")"
empty "librref.so has no text of an assertion" \
	"$(grep -c 'assertion failed' "$build/librref.so" | grep -v '^0$')"
# Most of its objects take the lock, or have invariants of their own.
nr=$(asserting "$build/librref-test.a" | awk '{print $1}' | sort -u | wc -l)
check "the tests' library does, in most of its objects ($nr)" [ "$nr" -ge 70 ]

# Faults are injected in what the tests link, never in what is installed.
empty "nothing of the fault injector ships" \
	"$(for f in "$build"/librref.so "$build"/librref.a; do nm "$f" 2>/dev/null |
	grep rc_inject | sed "s|^|$f: |"; grep -c RREF_INJECT "$f" | grep -v '^0$'; done)"
empty "the tests' library has it" \
	"$(nm "$build"/librref-test.a 2>/dev/null | grep ' T rc_inject_takes' > /dev/null ||
		echo "no rc_inject_takes")"

finish
