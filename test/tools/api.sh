#!/usr/bin/env bash
# The public face. The header compiles alone as C11 and C++17. The shared library exports the
# header's functions, nothing else, and has its soname. The documented errno codes exist and
# have words. The README's program compiles and runs. pkg-config finds an installed library.
#   api.sh [BUILD_DIR]
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
. test/tools/check.sh
build=${1:-build}
so=$build/librref.so
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
verdict() { # NAME COMMAND...: passes if the command succeeds
	local out name=$1
	shift
	out=$("$@" 2>&1) && out= || out="${out:-failed: $*}"
	empty "$name" "$out"
}

echo '#include <rref.h>' > "$tmp/alone.c"
cp "$tmp/alone.c" "$tmp/alone.cc"
verdict "the header compiles alone as C11" cc -std=c11 -Wall -Wextra -pedantic -Werror -Iinclude \
	-fsyntax-only "$tmp/alone.c"
verdict "the header compiles alone as C++17" c++ -std=c++17 -Wall -Wextra -Wshadow -pedantic \
	-Werror -Iinclude -fsyntax-only "$tmp/alone.cc"

declared=$(cc -E -P -Iinclude include/rref.h | tr '\n' ' ' |
	grep -oE '\brref_[a-z_]+ *\(' | tr -d ' (' | sort -u)
exported=$(nm -D --defined-only "$so" | awk '{print $3}' | sed 's/@.*//' |
	grep -v '^RREF_' | sort -u)
empty "declared and exported are the same" "$(diff <(echo "$declared") <(echo "$exported"))"
empty "no other symbol leaves the library" \
	"$(nm -D --defined-only "$so" | awk '{print $3}' |
	grep -vE '^(rref_[a-z_]+(@@RREF_[0-9.]+)?|RREF_[0-9.]+)$')"
# No function is a cancellation point: each begins with RB_NO_CANCEL. The exceptions neither wait
# nor lock nor make a system call. The fast ways of reads, of queues, of waits for what is over, and
# of what gives back make none. Their slow ways are guarded there.
plain='rref_(call_(caller|cancelled|context|data|function|length|meta|meta_length|nr_refs|ref)
confirmed context ctx_fd dup equal fork_id format future_(data|error|free|nr_refs|ref|test)
future_(type|view|wait) get_id hash is_owner last_error last_error_detail message_kind
options_from_env options_init_size owner owner_name queue_(add|next|take) rank serve_stop
set_timeout site stats_format strerror to_here(_async)? version version_number
view_(data|free|is_copy|length|nr_refs|segments) worker worker_by_name world_size)'
guarded=$(awk '
	/^[a-z].*[ *]rref_[a-z_]+\(/ && !/;$/ {
		match($0, /rref_[a-z_]+\(/)
		name = substr($0, RSTART, RLENGTH - 1)
		has = 0
	}
	name && /RB_NO_CANCEL/ { has = 1 }
	name && /^}/ { if (has) print name; name = "" }' core/*.c core/[!t]*/*.c | sort -u)
empty "every function that may wait begins with RB_NO_CANCEL" \
	"$(grep -vxE "$(echo $plain | tr ' ' '|')" <<<"$declared" | grep -vxF "$guarded")"
empty "soname" \
	"$(readelf -d "$so" | grep -qE 'SONAME.*\[librref\.so\.[0-9]+\]' || echo "no soname")"
empty "every symbol has a version" \
	"$(nm -D --defined-only "$so" | awk '$2 == "T" {print $3}' | grep -v '@')"
empty "full RELRO, no executable stack" \
	"$(readelf -dlW "$so" | grep -q BIND_NOW || echo "no BIND_NOW"
	readelf -lW "$so" | grep GNU_STACK | grep -w RWE)"

# Each errno named in the header must exist and have words of its own.
{
	echo '#include <errno.h>'
	echo '#include <stdio.h>'
	echo '#include <string.h>'
	echo '#include <rref.h>'
	echo 'int main(void) { int bad = 0;'
	grep -ohE -- '-E[A-Z]+' include/rref.h include/rref/*.h | sort -u | sed 's/^-//' |
		while read -r e; do
			echo "if (!*rref_strerror(-$e) ||"
			echo "    !strcmp(rref_strerror(-$e), \"unknown error\"))"
			echo "        { puts(\"$e\"); bad = 1; }"
		done
	echo 'return bad; }'
} > "$tmp/errno.c"
verdict "documented errno codes exist and have words" sh -c "cc -Iinclude '$tmp/errno.c' \
	-o '$tmp/errno' -L'$build' -lrref -Wl,-rpath,'$PWD/$build' && '$tmp/errno'"
# Each code that the library's public functions return by name is documented, too.
undocumented=$(grep -ohE 'rc_fail\(E[A-Z]+' core/*.c core/[!t]*/*.c | sed 's/rc_fail(//' | sort -u |
	while read -r e; do grep -qh -- "-$e\b" include/rref.h include/rref/*.h || echo "$e"; done)
empty "codes given by the core are documented in the header" "$undocumented"
# Each function has a block of its own, of which a manual page can be made: header.py. First it has
# to find a fault of each kind.
part=rref/part.h # of the planted tree
mkdir -p "$tmp/planted/include/rref" "$tmp/planted/core"
cat >"$tmp/planted/include/$part" <<'EOF'
/*
 * Makes a thing.
 *
 *   out   *out is returned
 *
 * Returns 0, or
 *   -EINVAL   out is NULL
 *
 * Threads: any. Progress: may lock.
 */
RREF_API int rref_good(struct rref **out);

RREF_API int rref_shares_a_block(void);

/*
 * A thing is made.
 *
 *   in   of the thing
 *
 * Threads: any. Progress: swift.
 */
RREF_API int rref_bad(int in, void (*release)(void *arg), int out);

/* Makes nothing. -EPERM: never. Progress: wait-free. */
RREF_API void rref_without_threads(void);

/* Makes a line that is far too long for any terminal of eighty or of a hundred columns, of course. */
EOF
cat >"$tmp/planted/core/part.c" <<'EOF'
static int check(int in)
{
	return in ? 0 : rc_fail(EDOM, "none");
}

int rref_bad(int in, void (*release)(void *arg), int out)
{
	if (rc_is_barred(in))
		return 1;
	return check(out);
}
EOF
sed "s|^|include/$part|" >"$tmp/expected" <<'EOF'
: rref_shares_a_block: no block directly above it
: rref_bad: the first sentence does not begin with a verb: A thing is
: rref_bad: no line of parameter release
: rref_bad: no line of parameter out
: rref_bad: no "Returns"
: rref_bad: neither errors nor "Never fails"
: rref_bad: -ECHILD, which it gives
: rref_bad: -EDEADLK, which it gives
: rref_bad: -EDOM, which it gives
: rref_bad: no "Progress:" with one of wait-free, lock-free, may lock, may block
: rref_without_threads: no "Threads:"
:27: more than 100 columns
EOF
echo "4 functions" >>"$tmp/expected"
empty "the look at the header finds a fault of each kind" \
	"$(test/tools/header.py --root "$tmp/planted" | diff "$tmp/expected" -)"
verdict "each function has a block of its own, with parameters, errors, threads and progress" \
	test/tools/header.py
empty "header.py sees every function" \
	"$(diff <(test/tools/header.py | tail -n 1) <(echo "$(wc -l <<<"$exported") functions"))"
mkdir "$tmp/pages"
verdict "a manual page can be made of each" test/tools/header.py --pages "$tmp/pages"
empty "each page has its parts" \
	"$(diff <(cd "$tmp/pages" && grep -lx '.SH NAME' *.3 | xargs grep -lx '.SH SYNOPSIS' |
		xargs grep -lx '.SH DESCRIPTION' | xargs grep -lx '.SH ATTRIBUTES' |
		sed 's/\.3$//') \
		<(echo "$exported"))"
for part in include/rref/*.h; do
	verdict "${part#include/} compiles alone as C11" \
		cc -std=c11 -Wall -Wextra -pedantic -Werror -fsyntax-only -x c "$part"
done

if [ -f README.md ]; then
	sed -n '/^```c$/,/^```$/p' README.md | sed '1d;/^```$/,$d' > "$tmp/readme.c"
	strict="-Wall -Wextra -pedantic -Werror -Iinclude -fsyntax-only"
	# shellcheck disable=SC2086
	verdict "the README's program is C11" cc -std=c11 $strict "$tmp/readme.c"
	# shellcheck disable=SC2086
	verdict "the README's program is C++17" c++ -x c++ -std=c++17 $strict "$tmp/readme.c"
	empty "the README's program is at most 60 lines" \
		"$([ "$(wc -l < "$tmp/readme.c")" -le 60 ] || wc -l "$tmp/readme.c")"
	for cc in "cc" "c++ -x c++"; do
		verdict "the README's commands work, by $cc" \
			timeout $((60 * ${RREF_TEST_SLOW:-1})) \
			test/tools/readme-run.sh --user --cc "$cc" --to "$tmp/home"
	done
fi

info=$build/bin/rref-info
empty "rref-info tells the choice of auto, and the devices of this machine" \
	"$("$info" >"$tmp/info" 2>&1 || echo "status $?"
	for words in 'RDMA devices' 'Shared memory' 'What "auto" chooses' \
		'peers on this machine  shm' 'peers on others' 'locked memory'; do
		grep -qF "$words" "$tmp/info" || echo "nothing of: $words"
	done)"
empty "rref-info judges a device by its status, and says why not" \
	"$("$info" --device shm >/dev/null || echo "shm does not open"
	"$info" --device ibv:no_such0 >"$tmp/info" 2>&1 && echo "ibv:no_such0 opens"
	grep -q 'does not open: .' "$tmp/info" || cat "$tmp/info"
	"$info" --device no_such >/dev/null 2>&1 && echo "no_such opens")"

verdict "make install puts the library where DESTDIR and PREFIX say" make -s install \
	DESTDIR="$tmp/root" PREFIX=/opt/rref
export PKG_CONFIG_PATH=$tmp/root/opt/rref/lib/pkgconfig PKG_CONFIG_SYSROOT_DIR=$tmp/root
echo '#include <rref.h>
int main(void) { return rref_version_number() != RREF_VERSION_NUMBER; }' > "$tmp/user.c"
verdict "a program finds it by pkg-config" sh -c "cc '$tmp/user.c' -o '$tmp/user' \
	\$(pkg-config --cflags --libs librref) &&
	LD_LIBRARY_PATH='$tmp/root/opt/rref/lib' '$tmp/user'"

finish
