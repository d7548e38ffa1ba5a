#!/usr/bin/env bash
# docs/CONFORMANCE.md against test/conformance. Every number of its list has a
# row, with tests or with the reason for none. Each named test is in its program,
# in source and built. Each test of the programs has a row with its own number.
#   conformance.sh [BUILD_DIR]
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
. test/tools/check.sh
build=${1:-build}
page=docs/CONFORMANCE.md

# "1 2 4-6" -> one per line
expand() {
	tr -s ', ' '\n' | grep -E '^[0-9]+(-[0-9]+)?$' |
		awk -F- '{ for (i = $1; i <= ($2 ? $2 : $1); i++) print i }'
}
wanted=$(sed -n '/^Numbers:/,/^$/p' "$page" | sed 's/^Numbers://' | expand | sort -n)
rows=$(grep -E '^\| ([0-9]|more)' "$page")
field() { cut -d'|' -f"$1" <<<"$2"; }

have=$(cut -d'|' -f2 <<<"$rows" | expand | sort -n)
empty "the list has numbers" \
	"$([ "$(wc -l <<<"$wanted")" -ge 100 ] || echo "only $(wc -l <<<"$wanted")")"
empty "each number of the list has a row, once" "$(diff <(echo "$wanted") <(echo "$have"))"

named=$(while read -r row; do
	program=$(field 4 "$row" | tr -d ' ')
	tests=$(field 5 "$row" | grep -oE '`[a-z0-9_]+`' | tr -d '`')
	for t in $tests; do echo "$program $t $(field 2 "$row" | tr -d ' ')"; done
done <<<"$rows")
empty "each row has tests, or says why not yet" "$(while read -r row; do
	field 5 "$row" | grep -qE -e '`(c[0-9]{3}|more)_[a-z0-9_]+`' \
		-e 'not yet: ..........|does not apply: ..........' || echo "$row"
done <<<"$rows")"
empty "each test named is in its program" "$(while read -r programs test _; do
	found=
	for program in ${programs//,/ }; do
		src=test/conformance/$program.c bin=$build/bin/conformance/$program
		[ -x "$bin" ] || echo "$bin is not built"
		defines="^(TG_TEST|DEATH_TEST)\($test,|^static void $test\(void \*\*state\)"
		grep -qsE "$defines" "$src" && grep -q "cmocka_unit_test($test)" "$src" &&
			grep -qaF "$test" "$bin" && found=1
	done
	[ "$found" ] || echo "$test is not among the tests of $programs, or not built"
done <<<"$named")"
# Names as they are defined, so that one left out of its program's table is found too.
defined=$(grep -ohE '^(TG_TEST|DEATH_TEST)\([a-z0-9_]+|^static void [a-z0-9_]+\(void \*\*state\)' \
	test/conformance/*.c |
	sed -E 's/^[A-Z_]+\(//; s/^static void //; s/\(.*//')
empty "each test has a row, of its own number" "$(for t in $defined; do
	case $t in
	c[0-9][0-9][0-9]_*) n=$((10#${t:1:3})) ;;
	more_*) n=more ;;
	*) echo "$t: named after no number"; continue ;;
	esac
	grep -E " $t " <<<"$named" | awk '{print $3}' | tr ',' '\n' | grep -qx "$n" ||
		echo "$t has no row with number $n"
done)"
empty "no test is defined twice" "$(sort <<<"$defined" | uniq -d)"

tests=$(wc -l <<<"$defined")
open=$(grep -E '^\| [0-9]' <<<"$rows" | grep 'not yet:' | cut -d'|' -f2 | expand | wc -l)
echo "$(wc -l <<<"$wanted") scenarios, $open of them not yet; $tests tests"
finish
