# shellcheck shell=bash
# Installs missing Debian packages, and builds. Sourced after common.sh.

apt_root() { as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq "$@"; }

# Refreshes apt's lists, once per run.
update_lists() {
    [ -z "${lists_updated-}" ] || return 0
    lists_updated=1
    say "refreshing the package lists"
    quietly apt_root update
}

# Succeeds if apt can install the packages without removing another one.
installs_cleanly() {
    local plan
    plan=$(apt-get -s "$@" 2>/dev/null) || return 1
    ! grep -q '^Remv' <<<"$plan"
}

codename() { sed -n 's/^VERSION_CODENAME=//p' /etc/os-release; }

# Prints the mirror that apt uses for the release of this system.
debian_mirror() {
    # shellcheck disable=SC2016 # apt expands it
    apt-get indextargets --format '$(REPO_URI)' "Codename: $(codename)" 2>/dev/null | head -n 1
}

# Installs packages from the release's backports, even if the system's sources lack them: apt reads them from a private
# file. The system's own sources stay unchanged.
install_from_backports() {
    local private codename mirror status=0
    codename=$(codename)
    mirror=$(debian_mirror)
    [ -n "$mirror" ] || return 1
    private=$(mktemp -d)
    chmod 755 "$private" # apt reads it as its own user
    echo "deb $mirror $codename-backports main" >"$private/backports.list"
    cat /etc/apt/sources.list "$private/backports.list" >"$private/all.list" 2>/dev/null || true
    # Keep the lists of the other sources: this update only reads backports.
    quietly apt_root update -o Dir::Etc::sourcelist="$private/backports.list" \
        -o Dir::Etc::sourceparts=- -o APT::Get::List-Cleanup=0 &&
        quietly apt_root install -y --no-install-recommends \
            -o Dir::Etc::sourcelist="$private/all.list" -t "$codename-backports" "$@" || status=$?
    rm -rf "$private"
    return "$status"
}

# Succeeds if the command exists, or the file if a path is given.
present() {
    case $1 in
    /*) [ -e "$1" ] ;;
    *) PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null ;;
    esac
}

# missing COMMAND=PACKAGE...: prints the packages whose commands are missing, each once.
missing() {
    local pair
    for pair in "$@"; do
        present "${pair%%=*}" || echo "${pair#*=}"
    done | sort -u
}

# need COMMAND=PACKAGE...: installs the packages whose commands are missing. Waits for a script that does the same.
need() {
    local lock
    exec {lock}<"$repo"
    flock "$lock"
    install_missing "$@"
    # Not only closed, because a program that was started may have inherited the file.
    flock --unlock "$lock"
    exec {lock}<&-
}

# install_missing COMMAND=PACKAGE...: installs the packages whose commands are missing.
#
# Debian refuses to mix a release's QEMU with parts from backports, and would remove the newer parts. In this case the
# missing part comes from backports too.
install_missing() {
    local missing
    mapfile -t missing < <(missing "$@")
    [ "${#missing[@]}" -ne 0 ] || return 0
    command -v apt-get >/dev/null ||
        die "these packages are missing, and there is no apt-get to install them: ${missing[*]}"
    can_be_root ||
        die "these packages are missing, and only root can install them: apt-get install --no-install-recommends ${missing[*]}"
    update_lists
    say "installing ${missing[*]}"
    if installs_cleanly install --no-install-recommends "${missing[@]}"; then
        quietly apt_root install -y --no-install-recommends "${missing[@]}"
    else
        install_from_backports "${missing[@]}"
    fi || die "could not install ${missing[*]}"
    mapfile -t missing < <(missing "$@")
    [ "${#missing[@]}" -eq 0 ] ||
        die "installed, but without the commands that are needed (this release has them elsewhere): ${missing[*]}"
}

# Installs QEMU and the programs that come with it. qemu-storage-daemon is part of QEMU in Debian 12 and of qemu-utils
# in Debian 13, so it is looked for after QEMU.
need_qemu() {
    need qemu-system-x86_64=qemu-system-x86 "$@"
    need qemu-storage-daemon=qemu-utils
}

# The linker that cargo uses.
readonly linker=(cc=gcc /usr/include/stdlib.h=libc6-dev)

# Checks cargo and rustc and their versions. Installs nothing, because the choice of a toolchain is the user's.
check_rust() {
    local wanted found
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$repo/Cargo.toml")
    for found in cargo rustc; do
        command -v "$found" >/dev/null ||
            die "$found was not found: install Rust $wanted or later (https://rustup.rs)"
    done
    found=$(cd "$repo" && cargo --version >/dev/null && rustc --version) || die "cargo does not work: see above"
    found=$(cut -d ' ' -f 2 <<<"$found")
    printf '%s\n' "$wanted" "${found%%-*}" | sort -C -V ||
        die "Rust $found is too old, $wanted or later is needed: run rustup update, or install it from https://rustup.rs"
}

need_cargo() {
    check_rust
    need "${linker[@]}"
}

# Directory for commands built here, apart from the user's own.
readonly tools=$target/tools/bin

# Builds cargo-deny without optimisation: it takes a minute to build on two cores, and runs for a second.
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
