# shellcheck shell=bash
# What all scripts share: progress lines, errors, root rights. Sourced, never run.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
readonly repo
export cache=$repo/.cache
export target=${CARGO_TARGET_DIR:-$repo/target}

# Progress goes to stderr: some scripts print a result for others to read.
say() { printf '==> %s\n' "$*" >&2; }

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# Runs a command as root, by sudo where we are not.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "needs root or sudo for: $*"
    fi
}

# Runs a command whose output only matters when it fails.
quietly() {
    local log status=0
    log=$(mktemp)
    "$@" >"$log" 2>&1 </dev/null || status=$?
    if [ "$status" -ne 0 ]; then
        printf '%s: failed with status %d: %s\n' "${0##*/}" "$status" "$*" >&2
        tail -n 30 "$log" >&2
    fi
    rm -f "$log"
    return "$status"
}
