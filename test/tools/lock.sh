#!/usr/bin/env bash
# The progress lock is held where it must be: clang proves it from the words of core/base/locked.h.
#   lock.sh
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
. test/tools/check.sh
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
said=$tmp/said

if ! command -v clang >/dev/null; then
	echo "lock.sh: there is no clang (apt install clang)" >&2
	exit 1
fi
proves() { # FILE ARGS...
	clang -fsyntax-only -std=gnu11 -D_GNU_SOURCE -Iinclude -I. -Werror \
		-Wthread-safety "${@:2}" "$1"
}
for f in core/*.c core/[!t]*/*.c; do
	check "$f" run proves "$f"
done
for f in core/session/{inject,send}.c; do
	check "$f with the injector" run proves "$f" -DRREF_INJECT
done

# The compiler must find a call without the lock, and the use of a field.
cat >"$tmp/call.c" <<'END'
#include "core/base/lock.h"
#include "core/op/step.h"
void f(struct rref_ctx *ctx);
void f(struct rref_ctx *ctx)
{
	rc_lock(ctx);
	rc_effects(ctx);
	rc_unlock(ctx);
#ifdef FAULT
	rc_effects(ctx);
#endif
}
END
cat >"$tmp/field.c" <<'END'
#include "core/base/lock.h"
int f(struct rref_ctx *ctx, uint32_t rank);
int f(struct rref_ctx *ctx, uint32_t rank)
{
	rc_lock(ctx);
	int state = (int)ctx->peers[rank].state;

	rc_unlock(ctx);
#ifdef FAULT
	state = (int)ctx->peers[rank].state;
#endif
	return state;
}
END
for f in call field; do
	check "a $f under the lock" run proves "$tmp/$f.c"
	check "a $f without it is an error" fails proves "$tmp/$f.c" -DFAULT
	check "which says so" says "requires holding lock 'rc_progress'"
done
# A function that takes the lock by itself is not called under it.
cat >"$tmp/twice.c" <<'END'
#include "core/base/lock.h"
#include "core/read/read.h"
void f(struct rref_ctx *ctx, struct rref_future *op);
void f(struct rref_ctx *ctx, struct rref_future *op)
{
	rc_read_start(op);
	rc_lock(ctx);
#ifdef FAULT
	rc_read_start(op);
#endif
	rc_read_start_locked(op);
	rc_unlock(ctx);
}
END
check "a lock taken once" run proves "$tmp/twice.c"
check "a lock taken twice is an error" fails proves "$tmp/twice.c" -DFAULT
check "which says so" says "cannot call function 'rc_read_start' while lock 'rc_progress' is held"
empty "a function that needs the lock asserts it, as far as it knows the context" \
	"$(test/tools/lock.py)"
mkdir "$tmp/core"
echo 'needs_lock void f(struct rref_ctx *ctx);' >"$tmp/core/f.h"
printf 'void f(struct rref_ctx *ctx)\n{\n\tg(ctx);\n}\n' >"$tmp/core/f.c"
check "a function that does not is found" \
	[ "$(test/tools/lock.py "$tmp")" = "$tmp/core/f.h: f" ]
empty "no comment speaks for the lock: needs_lock and under_lock do" \
	"$(grep -rn '\[lock' --include='*.[ch]' core)"
finish
