# shellcheck shell=bash
# Reads the guest of qemu-configs/guest.cfg and its variants, which the comment there describes. Sourced after
# common.sh.

# shellcheck disable=SC2154 # common.sh sets it
guest_cfg=$repo/qemu-configs/guest.cfg

# Prints the names of the variants on one line.
config_names() { sed -n 's/^# \([a-z-]*\): .*/\1/p' "$guest_cfg" | paste -sd ' '; }

# config_options NAME PROGRAM: the options that a variant adds to the command line of vhost-user-blk or
# qemu-system-x86_64.
config_options() {
    awk -v name="# $1: " -v command="#   $2 " '
        index($0, name) == 1 { inside = 1 }
        $0 == "#" { inside = 0 }
        inside && index($0, command) == 1 { print substr($0, length(command) + 1) }' "$guest_cfg"
}

# The daemon options that all variants share.
common_options() { sed -n 's/^#   vhost-user-blk \(--socket-path.*\)/\1/p' "$guest_cfg"; }
