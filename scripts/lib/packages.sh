# shellcheck shell=bash
# Installs Debian packages, only the ones that are missing, and builds. Sourced after common.sh.

apt_root() { as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq "$@"; }

# Refreshes apt's lists, once per run.
update_lists() {
    [ -z "${lists_updated-}" ] || return 0
    lists_updated=1
    say "refreshing the package lists"
    quietly apt_root update
}

# True if apt can install the packages without taking another one away.
installs_cleanly() {
    local plan
    plan=$(apt-get -s "$@" 2>/dev/null) || return 1
    ! grep -q '^Remv' <<<"$plan"
}

# Installs packages from the release's backports, which need not be among the system's sources: apt
# reads them from a private file. The system's own sources stay as they are.
install_from_backports() {
    local private codename mirror status=0
    # shellcheck source=/dev/null
    codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
    # shellcheck disable=SC2016 # apt expands it
    mirror=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $codename" | head -n 1)
    [ -n "$mirror" ] || return 1
    private=$(mktemp -d)
    chmod 755 "$private" # apt reads it as its own user
    echo "deb $mirror $codename-backports main" >"$private/backports.list"
    cat /etc/apt/sources.list "$private/backports.list" >"$private/all.list" 2>/dev/null || true
    # The lists of the other sources are kept: this update looks at backports alone.
    quietly apt_root update -o Dir::Etc::sourcelist="$private/backports.list" \
        -o Dir::Etc::sourceparts=- -o APT::Get::List-Cleanup=0 &&
        quietly apt_root install -y --no-install-recommends \
            -o Dir::Etc::sourcelist="$private/all.list" -t "$codename-backports" "$@" || status=$?
    rm -rf "$private"
    return "$status"
}

# True if there is such a command, or file where a path is given.
present() {
    case $1 in
    /*) [ -e "$1" ] ;;
    *) PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null ;;
    esac
}

# need COMMAND=PACKAGE...: installs the packages whose commands are missing.
#
# Debian refuses to mix a release's QEMU with parts from backports and would remove the newer ones;
# then the missing part comes from backports, too.
need() {
    local pair missing=()
    for pair in "$@"; do
        present "${pair%%=*}" || missing+=("${pair#*=}")
    done
    [ "${#missing[@]}" -ne 0 ] || return 0
    command -v apt-get >/dev/null ||
        die "missing, and this is no Debian system to install it on: ${missing[*]}"
    mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
    update_lists
    say "installing ${missing[*]}"
    if installs_cleanly install --no-install-recommends "${missing[@]}"; then
        quietly apt_root install -y --no-install-recommends "${missing[@]}"
    else
        install_from_backports "${missing[@]}"
    fi || die "could not install ${missing[*]}"
}

# Cargo is left to its user, who has chosen a toolchain; what it links with is Debian's.
need_cargo() {
    command -v cargo >/dev/null ||
        die "cargo was not found: install Rust 1.88 or later (rustup, https://rustup.rs)"
    need cc=gcc /usr/include/stdlib.h=libc6-dev
}

# Commands built here, and not in the user's own folder.
readonly tools=$target/tools/bin

# cargo-deny, unoptimised: it is built in a minute on two cores, and run for a second.
need_deny() {
    local version=0.20.2
    [ "$("$tools/cargo-deny" --version 2>/dev/null)" != "cargo-deny $version" ] || return 0
    say "building cargo-deny $version"
    CARGO_PROFILE_DEV_DEBUG=0 CARGO_INCREMENTAL=0 RUSTFLAGS='' \
        quietly cargo install "cargo-deny@$version" --locked --debug --root "$target/tools" \
        --target-dir "$target/tools/build" || die "cargo-deny cannot be built"
    rm -rf "$target/tools/build"
}

build_release() {
    need_cargo
    say "building vhost-user-blk (release)"
    (cd "$repo" && cargo build --release --locked --quiet --bin vhost-user-blk) >&2 ||
        die "the build failed"
}
