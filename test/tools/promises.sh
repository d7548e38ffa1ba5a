#!/usr/bin/env bash
# Each promise of docs/SECURITY.md names tests; each of these is run by the program that it names.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
. test/tools/check.sh
while IFS= read -r row; do
	program=
	while IFS= read -r name; do
		case $name in
		*/*)
			program=test/$name.c
			continue
			;;
		esac
		# The place of the text, and the program's table.
		if [ "$(grep -cw -- "$name" "$program" 2>/dev/null)" -ge 2 ] 2>/dev/null; then
			ok
		else
			failed=$((failed + 1))
			echo "FAILED: $program has no test $name"
		fi
	done < <(grep -oE '`[a-z0-9_/]+`' <<<"$row" | tr -d '`')
done < <(sed -n '/^## Where each promise/,/^## Advice/p' docs/SECURITY.md | grep '^| [^-p]')
finish && [ "$passed" -gt 50 ]
