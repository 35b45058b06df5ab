# shellcheck shell=bash
# Fetches Python packages that tests use: qemu.qmp, QEMU's own QMP client, and prometheus_client, which parses metrics.
# Sourced after packages.sh.

# The packages are unpacked beside the build and never installed. Tests that lack their package are skipped.
fetch_python_packages() {
    fetch_python_package qemu/qmp 'qemu.qmp==0.0.*'
    fetch_python_package prometheus_client 'prometheus_client==0.*'
}

# fetch_python_package FOLDER REQUIREMENT
fetch_python_package() {
    # shellcheck disable=SC2154 # common.sh sets it
    local dir=$cache/python
    [ ! -e "$dir/$1/__init__.py" ] || return 0
    need python3=python3 pip3=python3-pip
    say "fetching $2"
    mkdir -p "$dir"
    if quietly pip3 --retries 1 download --no-deps --only-binary :all: --dest "$dir" "$2"; then
        quietly python3 -m zipfile -e "$dir"/*.whl "$dir"
        rm "$dir"/*.whl
    else
        say "$2 cannot be fetched"
    fi
}
