# shellcheck shell=bash
# Shared by all scripts: progress lines, errors, root rights. Sourced, never run.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
readonly repo
export cache=$repo/.cache
export target=${CARGO_TARGET_DIR:-$repo/target}

# Progress goes to stderr, because some scripts print a result for others to read.
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

# Prints the reason why QEMU cannot use KVM here, or nothing if it can.
#
# Nested machines may have a /dev/kvm that cannot run a kernel, so the CPU must report support too.
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

# Runs a command, and shows its output only if it fails. In a subshell, so that the reason is shown even if the command
# exits.
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
