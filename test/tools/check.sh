# Counts the checks of a test script. A script sources it from the top of the tree
# and sets the options it needs. It ends with `finish`, whose status is the script's.
#   said      the file that `run` writes to and `says` looks at; shown when a check fails
#   show_last the number of its last lines that are shown, for tail -n; +1: all
#   margin    the text before each of these lines
#   skipped   set: a count that the closing line has too
# shellcheck shell=bash disable=SC2034
passed=0 failed=0
said='' show_last=+1 margin='    '

ok() { passed=$((passed + 1)); }
bad() { # WORDS...: tells of a check that failed
	failed=$((failed + 1))
	echo "FAILED $*"
}
check() { # NAME COMMAND...: passes when the command succeeds
	local name=$1
	shift
	if "$@"; then
		ok
	else
		bad "$name"
		[ -z "$said" ] || tail -n "$show_last" "$said" | sed "s/^/$margin/"
	fi
}
empty() { # NAME OUTPUT: passes when OUTPUT is empty
	if [ -z "$2" ]; then
		ok
	else
		bad "$1:"
		echo "$2" | sed 's/^/    /'
	fi
}
run() { "$@" >"$said" 2>&1; }
fails() { ! run "$@"; }
not() { ! "$@"; }
says() { grep -qE -- "$1" "$said"; }
finish() {
	echo "$passed passed, $failed failed${skipped:+, $skipped skipped}"
	[ "$failed" -eq 0 ]
}
