#!/bin/sh
# README's table of what kernels let the agent attach, from tests/vm/results.txt:
#   results.sh CONSOLE...    takes over what tests printed (target/vm/results.txt, target/test.log), and makes the table
#   results.sh check         exit status 1 if README has another
set -eu
cd "$(dirname "$0")/../.."
results=tests/vm/results.txt
new=$(mktemp)
trap 'rm -f "$new"' EXIT

if [ "${1-}" != check ] && [ $# != 0 ]; then
    # The later of two lines about the same.
    cat -- "$results" "$@" | grep -a '^ATTACHED .* \.$' | awk '{ line[$2, $3, $4, $5] = $0 } END { for (l in line) print line[l] }' |
        sort -V >"$new"
    { sed -n '/^#/p' "$results" && cat "$new"; } >"$new.all"
    mv "$new.all" "$results"
fi
awk '
    FNR == NR { table = table $0 "\n"; next }
    /^<!-- by tests\/vm\/results.sh/ { print; printf "\n%s\n", table; inside = 1 }
    /^<!-- end of the table -->/ { inside = 0 }
    !inside && !/^<!-- by tests/ { print }
' - README.md >"$new" <<END
$(awk -f tests/vm/results.awk "$results")
END
if [ "${1-}" = check ]; then
    diff README.md "$new" || { echo "README's table is not that of $results: make results" >&2; exit 1; }
else
    cat "$new" >README.md
fi
