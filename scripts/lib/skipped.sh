# shellcheck shell=bash
# Collects and prints the list of skipped tests with the reasons. Sourced after common.sh.

# Makes tests, and scripts called by this one, add to the list in one file, and prints the list at the exit. Does
# nothing if the caller already collects the list.
collect_skipped() {
    [ -z "${SKIPPED_TESTS-}" ] || return 0
    SKIPPED_TESTS=$(mktemp)
    export SKIPPED_TESTS
    trap list_skipped EXIT
}

# skipped WHAT REASON: records a skipped step that is not a test. Tests use testkit/src/skip.rs.
skipped() { echo "skipped: $1: $2" >>"$SKIPPED_TESTS"; }

list_skipped() {
    if [ -s "$SKIPPED_TESTS" ]; then
        say "skipped here, in whole or in part:"
        sort -u "$SKIPPED_TESTS" | sed 's/^skipped: /    /' >&2
    else
        say "no test was skipped"
    fi
    rm -f "$SKIPPED_TESTS"
}
