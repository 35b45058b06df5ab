# shellcheck shell=bash
# Prints the table of scripts/guest, 80 columns wide. Sourced.

report='' counted=(0 0)

# Makes the next row start from the current counts of the daemon.
count_from_here() {
    [ "$backend" = qsd ] || read -ra counted < <(daemon_counts)
}

# report_job NAME TERSE: adds a row with the results of fio in the guest and the counts of the daemon.
report_job() {
    local counts=('' '')
    [ "$backend" = qsd ] || read -ra counts < <(daemon_counts)
    report+=$(printf '%-19s%s%s' "$1" "$(fio_columns "$1" "$2")" \
        "$(daemon_columns "${counts[@]}")")$'\n'
    counted=("${counts[@]}")
}

# fio_columns NAME TERSE: prints kIOPS, MiB/s, median and 99th percentile of the latency in us.
#
# Fields used of the terse format, version 3: for reads 7 KiB/s, 8 IOPS, and from 18 the percentiles of the completion
# latency as "99.000000%=NUMBER"; for writes the same, 41 fields later.
fio_columns() {
    awk -F ';' -v name="$1" '
        function percentile(first, wanted,   i, part) {
            for (i = first; i < first + 20; i++) {
                split($i, part, "%=")
                if (part[1] + 0 == wanted) return part[2]
            }
            return "-"
        }
        $1 == 3 { # all other lines are remarks
            shift = name ~ /^write/ ? 41 : 0
            printf "%8.1f%8.1f%8s%8s", $(8 + shift) / 1000, $(7 + shift) / 1024,
                percentile(18 + shift, 50), percentile(18 + shift, 99)
        }' <<<"$2"
}

# Prints completions and notifications since the start of the daemon on one line.
daemon_counts() {
    local log=$logs/backend.log reports
    reports=$(grep -c '^stats: .*histogram' "$log" || true)
    kill -USR1 "$backend_pid"
    until [ "$(grep -c '^stats: .*histogram' "$log")" -gt "$reports" ]; do
        kill -0 "$backend_pid" 2>/dev/null || die "the backend has ended"
        sleep 0.02
    done
    sed -n 's/^stats: total.* completions=\([0-9]*\) notifications=\([0-9]*\).*/\1 \2/p' "$log" |
        tail -n 1
}

# daemon_columns COMPLETIONS NOTIFICATIONS: prints the difference to the last row.
daemon_columns() {
    [ -n "$1" ] || return 0
    awk -v completions=$(($1 - counted[0])) -v notifications=$(($2 - counted[1])) 'BEGIN {
        printf "%10d%9d%10.1f", completions, notifications,
            notifications ? completions / notifications : 0
    }'
}

print_report() {
    local ours='' missed
    [ "$backend" = qsd ] || ours=$(printf '%10s%9s%10s' completed notified 'per notif')
    printf '\n%s on %s, %d vCPU\n\n' "$(backend_name)" "$config" "$vcpus"
    printf '%-19s%8s%8s%8s%8s%s\n' 'fio in the guest' kIOPS MiB/s 'p50 us' 'p99 us' "$ours"
    printf '%s' "$report"
    [ "$backend" = qsd ] || sed -n 's/^stats: completions per notification, histogram:/\
Completions per notification, and how often:/p' "$logs/backend.log" | tail -n 2 | fold -s
    missed=$(sed -n 's/^stats: total.* missed_kicks=\([0-9]*\).*/\1/p' "$logs/backend.log" | tail -n 1)
    [ "${missed:-0}" -eq 0 ] || printf '\nKicks that did not come in time: %d\n' "$missed"
}

# Prints what runs the guest's CPUs, and the effect on the table.
say_accelerator() {
    if has_kvm; then
        say "QEMU runs the guest with KVM"
    else
        say "no KVM ($(kvm_obstacle)): QEMU emulates the guest's CPUs (TCG)"
    fi
}

# Prints how to read the table, and suggests the next run.
print_hints() {
    has_kvm || printf '\n%s\n' "\
Without KVM the speed is that of QEMU's emulated CPUs, not the disk's. The numbers
of completions and notifications are real."
    [ "$backend" = daemon ] || return 0
    local other=batch
    [ "$notify" = each ] || other=each
    printf '\n%s\n' "Compare notifications: scripts/guest --config batching --notify $other"
    [ "$config" = batching ] || printf '%s\n' "\
                  with:    scripts/guest --config batching --notify $notify"
}

backend_name() {
    if [ "$backend" = qsd ]; then
        echo qemu-storage-daemon
    else
        echo "vhost-user-blk --notify $notify${extra[*]:+ ${extra[*]}}"
    fi
}
