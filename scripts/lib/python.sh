# shellcheck shell=bash
# Fetches qemu.qmp, QEMU's own QMP client in Python, which a test uses. Sourced after packages.sh.

# The package is unpacked beside the build and never installed. Without it, the test is skipped.
fetch_python_qmp() {
    # shellcheck disable=SC2154 # common.sh sets it
    local dir=$cache/python
    [ ! -e "$dir/qemu/qmp/__init__.py" ] || return 0
    need python3=python3 pip3=python3-pip
    say "fetching qemu.qmp"
    mkdir -p "$dir"
    if quietly pip3 download --no-deps --only-binary :all: --dest "$dir" 'qemu.qmp==0.0.*'; then
        quietly python3 -m zipfile -e "$dir"/*.whl "$dir"
        rm "$dir"/*.whl
    else
        say "qemu.qmp cannot be fetched"
    fi
}
