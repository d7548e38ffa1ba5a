#!/usr/bin/env bash
# The pages of the tree, and all mentions of them. Each relative link and #anchor leads
# somewhere. Each page, section of a page and file of the tree is there that a page,
# comment or script names. Each page can be reached from README.md. The pictures are drawn
# from their texts, and docs/ARCHITECTURE.md stays short.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
. test/tools/check.sh
limit=1800 # words of docs/ARCHITECTURE.md

sources() { # the files that people write, with their names relative to the top
	find .ci alloc base core docs include perf test verbs *.md Makefile -type f \
		\( -name '*.[ch]' -o -name '*.cc' -o -name '*.md' -o -name '*.sh' -o -name '*.py' \
		-o -name '*.txt' -o -name '*.pml' -o -name '*.awk' -o -name Makefile \
		-o -path '.ci/*' \) |
		sort
}
look() { # KIND: prints all that is wrong of one kind
	sources | python3 test/tools/pages.py "$1" 2>&1
}

empty "each link and anchor of a page leads somewhere" "$(look links)"
empty "each page that is named is there" "$(look names)"
empty "each section of a page that is named is there" "$(look sections)"
empty "no page outside of the tree is cited" "$(look strangers)"
empty "each file and folder that is named is there" "$(look paths)"
empty "each function of the library that a page names is there" "$(look calls)"
empty "docs/GUIDE.md has the variables that the library reads" "$(look variables)"
empty "README.md and docs/PERF.md have the same figures" "$(look figures)"
empty "a header of each room names its page" "$(for room in core/*/ verbs/ alloc/; do
	[ "$room" = core/tools/ ] || grep -qE 'docs/[A-Za-z/]+[.]md' "$room"*.h || echo "$room"
done)"
empty "each page can be reached from README.md" "$(look orphans)"
empty "each picture is drawn from its text" \
	"$(python3 docs/pictures/draw.py --check docs/pictures/*.txt 2>&1)"
words=$(wc -w <docs/ARCHITECTURE.md)
check "docs/ARCHITECTURE.md has $words words, at most $limit" [ "$words" -le $limit ]
check "docs/ARCHITECTURE.md has four pictures" \
	[ "$(grep -c '^!\[.*\](pictures/.*\.svg)' docs/ARCHITECTURE.md)" -eq 4 ]

finish
