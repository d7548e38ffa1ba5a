#!/usr/bin/env bash
# Counts things that the style forbids (lint.py), and fails when a count is worse than its line in
# test/tools/lint.txt. First it plants one fault of each kind in a small tree, and looks whether
# each is counted.
#   lint.sh                 the counts
#   lint.sh --show WORD     the places of each measure with WORD in its name
#   lint.sh --lower         writes better counts into lint.txt
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
. test/tools/check.sh
lint=$PWD/test/tools/lint.py
[ $# -eq 0 ] || [ "$1" = --lower ] || exec "$lint" "$@"

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
said=$tmp/out show_last=5
plant() { # FILE: a file of the small tree, from standard input
	mkdir -p "$tmp/tree/$(dirname "$1")"
	cat >"$tmp/tree/$1"
}
measured() { (cd "$tmp/tree" && "$lint" "$@") >"$said" 2>&1; }
lowered() { measured --lower; }
worse() { ! measured; }
fails_to_lower() { ! lowered; }
counts() { # NUMBER MEASURE
	says "^ *$1 of (none|[0-9]+) $2:"
}

# ---- a tree without a fault
echo "first the checks of lint.py itself"
cp .clang-format "$tmp"
mkdir -p "$tmp/tree/build"
touch "$tmp/tree/build/librref-test.a"
plant test/tools/layers.sh <<'EOF'
echo "1 passed, 0 failed"
EOF
chmod +x "$tmp/tree/test/tools/layers.sh"
plant core/good.c <<'EOF'
/* Counts for the tests. It has a comment, a text and a static function. */
#include <assert.h>
#include "core/good.h"

/* Adds one to the number and returns it. */
static int add(int n)
{
	assert(n < 3);
	return n + 1; /* "[lock" is no mark, "what" in a text neither */
}

/* Returns the next number. */
int good(int n)
{
	return add(n);
}
EOF
plant core/good.h <<'EOF'
/* Returns the next number. */
int good(int n);
EOF
long=$(printf 'what-%.0s' {1..25})
plant README.md <<EOF
# Headings with who and what are not counted

A page. Its sentences are short. A line with a link may be long: [$long](docs/A.md).

| who | what is in a table: $long |
EOF
zero=(clauses openings sentences verbless width names format functions complexity files)
others=(lock-marks bool-locked foreign headers layers page-clauses page-sentences page-width)
check "the small tree is measured" lowered
for m in "${zero[@]}" "${zero[@]/#/test-}" "${others[@]}"; do
	check "the small tree has no fault: $m" counts 0 "$m"
done
check "its assertion is counted" counts 1 assertions
check "its lines are counted" counts 11 lines
check "its counts are the budget" measured
check "a line for each" [ "$(wc -l <"$tmp/tree/test/tools/lint.txt")" -eq 30 ]

# ---- a fault of each kind, or two
words=$(seq -s ' ' 21)
part() { # FILE NAME: a C file with faults that both parts count
	plant "$1" <<EOF
/* The caller frees it, whoever that is. Those are two clauses. */
/* Of all openings this is the one. */
/* Counts $words, and ends. This one is short. */

/* The first word is no verb. */
int $2(int n);

/* Whether it is one is no verb either. */
static int twice(int n)
{
	return n+1;
}
int $2(int n)
{
$(printf '\tn += %d;\n' {1..68})
	return twice(n);
}
int $2_hard(int n)
{
$(printf '\tif (n == %d)\n\t\treturn 0;\n' {1..10})
	return $2(n);
}
int $2_wide(int n); /* $(printf '%0100d' 0) */
EOF
	plant "${1%/*}/b.c" <<EOF
static int twice(int n)
{
	return 2 * n;
}
int $2_other(int n)
{
	return twice(n);
}
$(for n in {1..600}; do echo "extern int $2_$n;"; done)
EOF
}
part core/a.c a
part test/lib/a.c t
plant core/bad.h <<'EOF'
int bad(struct unknown *u, bool locked); /* [lock] and [lock] */
EOF
plant core/good.c <<'EOF'
/* The assertion of good.c is gone. */
EOF
plant core/ctx.h <<'EOF'
#include "core/below/state.h"

struct rc_all {
	int n;
};

struct rref_ctx {
	struct rc_room room;
	struct rc_all all;
};
EOF
plant core/below/state.h <<'EOF'
struct rc_room {
	int door;
};
EOF
for f in below/own above/foreign foreign; do
	plant core/$f.c <<'EOF'
int *door(struct rref_ctx *ctx)
{
	return ctx->all.n ? &ctx->room.door : &ctx->room.door;
}
EOF
done
plant test/a.sh <<<"# Those are counted in a script."
plant README.md <<EOF
A page says many things, what they are and why; whoever reads it is glad. A long line is $long.
A sentence goes over lines, and has words one by one as long as they come, until they do not
come any more.

- A sentence of a list has $words words.
EOF
plant test/tools/layers.sh <<'EOF'
echo "FAILED the first
FAILED the second
0 passed, 2 failed"
EOF
cp "$tmp/tree/test/tools/lint.txt" "$tmp/clean.txt"
check "faults are found" worse
while read -r number measure; do
	check "planted: $number $measure" counts "$number" "$measure"
	check "worse: $measure" says "^FAILED $measure: $number, but .*lint.txt asks for"
done <<'EOF'
2 clauses
2 openings
1 sentences
2 verbless
1 width
1 names
1 format
1 functions
1 complexity
1 files
3 test-clauses
3 test-openings
1 test-sentences
2 test-verbless
1 test-width
1 test-names
1 test-format
1 test-functions
1 test-complexity
1 test-files
2 lock-marks
1 bool-locked
2 foreign
0 assertions
735 lines
1 headers
2 layers
2 page-clauses
2 page-sentences
1 page-width
EOF
check "all that is measured is planted" says "^0 passed, 30 failed"
check "a place is told" says '^    core/a.c:1: whoever that is'
check "each place of a name is told" says '^    test/lib/b.c:1: twice'
measured --show names
check "SHOW lists the places" says '^core/a.c:9: names: twice'
check "and no other" not says clauses

# ---- the budget
check "a worse count fails with LOWER too" fails_to_lower
check "and leaves the budget" diff "$tmp/clean.txt" "$tmp/tree/test/tools/lint.txt"
sed -i 's/^clauses .*/clauses 7/; s/^assertions .*/assertions 0/; /^names/d' \
	"$tmp/tree/test/tools/lint.txt"
worse
check "a better count passes, and its line is told" says 'may be tightened .* clauses 7 -> 2'
check "a measure without a line fails" says '^FAILED names has no line'
fails_to_lower
check "LOWER writes the better one" grep -q '^clauses  *2$' "$tmp/tree/test/tools/lint.txt"
check "and the new one" grep -q '^names  *1$' "$tmp/tree/test/tools/lint.txt"

# ---- the tree
said=''
echo "$passed checks of lint.py itself"
"$lint" "$@" | tee "$tmp/tree.out"
line=$(tail -n 1 "$tmp/tree.out")
passed=$((passed + ${line%% *}))
failed=$((failed + $(sed 's/.*, \([0-9]*\) failed.*/\1/' <<<"$line")))
finish
