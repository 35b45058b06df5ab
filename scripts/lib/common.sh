# shellcheck shell=bash
# Shared by all scripts: progress lines, errors, root rights. Sourced, never run.

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

# Succeeds if commands can run as root.
can_be_root() { [ "$(id -u)" -eq 0 ] || command -v sudo >/dev/null; }

# Runs a command as root, with sudo if need be.
as_root() {
    can_be_root || die "needs root or sudo for: $*"
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

# Says why QEMU cannot use KVM here; prints nothing if it can.
#
# Nested machines may have a /dev/kvm that cannot run a kernel: the CPU has to say so, too.
kvm_obstacle() {
    if ! grep -qwE 'svm|vmx' /proc/cpuinfo; then
        echo "the CPU offers no virtualization"
    elif [ ! -e /dev/kvm ]; then
        echo "there is no /dev/kvm"
    elif [ ! -w /dev/kvm ]; then
        echo "$(id -un) may not open /dev/kvm"
    fi
}

has_kvm() { [ -z "$(kvm_obstacle)" ]; }

# Runs a command whose output only matters when it fails. In a subshell: if it exits, the reason is shown all the same.
quietly() {
    local log status=0
    log=$(mktemp)
    ("$@") >"$log" 2>&1 </dev/null || status=$?
    if [ "$status" -ne 0 ]; then
        printf '%s: failed with status %d: %s\n' "${0##*/}" "$status" "$*" >&2
        tail -n 30 "$log" >&2
    fi
    rm -f "$log"
    return "$status"
}
