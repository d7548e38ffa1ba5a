#!/usr/bin/env bash
# Plants each bug of test/sim/mutants.txt in a copy of its file. The simulator, built with the copy,
# must find it. The failing seed must replay and shrink. The tree itself is not touched.
#   mutants.sh [--seeds N] [NAME ...]    at most N seeds for each (20000); all, or these
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
. test/tools/check.sh
seeds=20000 build=build
usage() { sed -n '2,4s/^# //p' "$0"; }
while [ $# -gt 0 ]; do
	case $1 in
	--seeds) seeds=${2-}; shift 2 || exit 2 ;;
	--help) usage; exit 0 ;;
	-*) echo "mutants.sh: '$1' is no option" >&2; usage >&2; exit 2 ;;
	*) break ;;
	esac
done
case $seeds in
'' | *[!0-9]* | 0)
	echo "mutants.sh: --seeds wants a number from 1 on, not '$seeds'" >&2
	exit 2
	;;
esac
table=test/sim/mutants.txt dir=$build/sim/mutants
cc=${CC:-cc} flags="-std=gnu11 -O1 -g -D_GNU_SOURCE -I. -Iinclude -w"

# Applies one mutant to copies under $1: every old text must stand in its file exactly once.
plant() { # DIR NAME
	awk -v dir="$1" -v name="$2" '
	function slurp(path,    text, line) {
		text = ""
		while ((getline line <path) > 0) text = text line "\n"
		close(path)
		return text
	}
	function fail(why) { print "mutants.txt: " name ": " why; bad = 1; exit 1 }
	function flush(    text, at, rest) {
		if (old == "") { if (new != "") fail("a change without old text"); return }
		text = (file in texts) ? texts[file] : slurp(file)
		# The last old line may be the beginning of a line.
		sub(/\n$/, "", old); sub(/\n$/, "", new)
		at = index(text, old)
		if (!at) fail("its old text does not stand in " file)
		rest = substr(text, at + length(old))
		if (index(rest, old)) fail("its old text stands more than once in " file)
		texts[file] = substr(text, 1, at - 1) new rest
		old = new = ""
	}
	/^#/ && !on { next }
	/^mutant / {
		if (on) flush()
		on = (index($0, "mutant " name ":") == 1)
		found += on
		next
	}
	!on { next }
	/^file / { flush(); file = $2; next }
	/^-/ { if (new != "") fail("old text after new"); old = old substr($0, 2) "\n"; next }
	/^\+/ { new = new substr($0, 2) "\n"; next }
	/^$/ { next }
	{ fail("what is this: " $0) }
	END {
		if (bad) exit 1
		if (on) flush()
		if (bad) exit 1
		if (found != 1) { print "mutants.txt: " name ": there " found + 0 " times"; exit 1 }
		for (f in texts) {
			out = f
			gsub("/", "_", out)
			printf "%s", texts[f] >(dir "/" out)
			print dir "/" out
		}
	}' $table
}

objects=$(find "$build/test/sim" "$build/test/lib/tl_rpcheck.o" -name '*.o' | sort)
if ! [ -x "$build/bin/sim" ] || [ -z "$objects" ]; then
	echo "mutants.sh: build/bin/sim is not built: make build/bin/sim" >&2
	exit 1
fi
all=$(sed -n 's/^mutant \([^:]*\):.*/\1/p' $table)
[ $# -gt 0 ] && all=$*
[ "$(echo "$all" | wc -w)" -gt 0 ] || { echo "mutants.sh: no mutants" >&2; exit 1; }
rm -rf "$dir"
mkdir -p "$dir"

build_mutant() { # NAME: build/sim/mutants/NAME/sim, with the planted files instead of the true ones
	local name=$1 out=$dir/$1 files f o objs=$objects new=''
	mkdir -p "$out"
	files=$(plant "$out" "$name") || { echo "$files"; return 1; }
	for f in $files; do
		o=${f%.c}.o
		$cc $flags -c "$f" -o "$o" || return 1
		new="$new $o"
		# The object of a planted file of the simulator replaces the true one. A planted
		# file of the machine keeps the archive's object out.
		case $(basename "$f") in
		test_sim_*)
			objs=$(echo "$objs" | grep -v "/$(basename "${o#"$out"/test_sim_}")\$")
			;;
		esac
	done
	# The library that ships: the simulator's own rules find them, without assertions.
	$cc -o "$out/sim" $new $objs "$build/tested/base/assert.o" "$build/librref.a"
}

for name in $all; do
	if ! log=$(build_mutant "$name" 2>&1); then
		bad "$name: could not be planted"
		echo "$log" | sed 's/^/    /'
		continue
	fi
	log=$("$dir/$name/sim" --seeds "$seeds" --no-shrink 2>&1)
	status=$?
	line=$(echo "$log" | grep '^FAILED seed')
	if [ $status -eq 1 ] && [ -n "$line" ]; then
		ok
		printf '%-32s %s\n' "$name" "${line#FAILED }"
	else
		bad "$name: not found in $seeds seeds (status $status)"
		echo "$log" | tail -n 3 | sed 's/^/    /'
	fi
done

# A failing seed replays to the byte. Its shrunk plan fails in the same way and is small.
for name in $all; do
	case $name in
	reclaim-before-grace | accept-skipped | erased-twice | runtime-reads-after-fence) ;;
	*) continue ;;
	esac
	sim=$dir/$name/sim
	[ -x "$sim" ] || continue
	log=$("$sim" --seeds "$seeds" 2>&1)
	seed=$(echo "$log" | sed -n 's/^FAILED seed \([0-9]*\) .*/\1/p')
	size=$(echo "$log" | sed -n 's/^shrunk to \([0-9]*\) decisions.*/\1/p')
	again=$(echo "$log" | sed -n 's/^replay: build\/bin\/sim \(.*--keep.*\)/\1/p')
	trace=$(echo "$log" | sed '1,/--keep/d' | sed '/^[0-9]* passed/d')
	first=$("$sim" --seed "$seed" --trace 2>&1 | md5sum)
	second=$("$sim" --seed "$seed" --trace 2>&1 | md5sum)
	if [ -n "$seed" ] && [ "$first" = "$second" ]; then
		ok
	else
		bad "$name: seed '$seed' does not replay"
	fi
	if [ -n "$again" ] && [ "$("$sim" $again 2>&1 | grep -v '^FAILED seed')" = "$trace" ] &&
		echo "$trace" | grep -q '^FAILED: '; then
		ok
	else
		bad "$name: what seed '$seed' was shrunk to does not replay"
	fi
	if [ -n "$size" ] && [ "$size" -le 25 ]; then
		ok
		printf '%-32s shrunk to %s decisions\n' "$name" "$size"
	else
		bad "$name: shrunk to '$size' decisions only"
	fi
done

# The same files with nothing planted pass.
if "$build/bin/sim" --seeds 2000 --no-shrink >"$dir/log" 2>&1; then
	ok
else
	bad "the true machine fails too"
	cat "$dir/log"
fi
finish
