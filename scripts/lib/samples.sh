# shellcheck shell=bash
# Makes samples of fio in a guest, in the form of docs/bench-schema.md. Sourced by scripts/bench-guest, whose options
# (runtime, event_idx) it reads.

samples=''
measured_at=$(date -u +%FT%TZ)
quantiles=1:10:25:50:75:90:95:99:99.5:99.9:99.99

# fio_command JOBS IODEPTH: prints a command that runs each job on its own vCPU, and so on its own queue.
fio_command() {
    echo "fio --name=job --filename=/dev/vda --rw=randread --bs=4k --direct=1 --ioengine=libaio" \
        "--group_reporting --randrepeat=0 --time_based --ramp_time=1 --runtime=$runtime" \
        "--numjobs=$1 --iodepth=$2 --cpus_allowed=0-$(($1 - 1)) --cpus_allowed_policy=split" \
        "--percentile_list=$quantiles --minimal --terse-version=3"
}

# Prints on one line, since the boot: reads and interrupts of the queues of the disk in the guest; CPU ticks, context
# switches and resident KiB of the backend.
counters() {
    guest_run 10 'cat /sys/block/vda/stat; grep -e -req /proc/interrupts' >&2
    awk '
        NR == 1 { reads = $1 + $2; next }
        { for (i = 2; $i ~ /^[0-9]+$/; i++) interrupts += $i }
        END { printf "%d %d ", reads, interrupts }' <<<"$guest_output"
    if [ -z "$backend_pid" ]; then
        echo 0 0 0
    else
        # The fields after the command in brackets. User and system time are the 12th and 13th of them.
        sed 's/.*) //' "/proc/$backend_pid/stat" | awk '{ printf "%d ", $12 + $13 }'
        cat "/proc/$backend_pid"/task/*/status | awk '
            /ctxt_switches/ { switches += $2 }
            /^VmRSS/ { rss = $2 }
            END { print switches, rss }'
    fi
}

# add_sample NAME ROUND JOBS IODEPTH TERSE BEFORE AFTER: adds a sample.
add_sample() {
    local frontend=guest-tcg
    ! has_kvm || frontend=guest-kvm
    # Fields used of the terse format, version 3: 8 IOPS, 15 the longest completion latency in us, and from 18 the
    # percentiles as "99.000000%=NUMBER".
    samples+=${samples:+,}$(awk -F ';' -v name="$1" -v round="$2" -v jobs="$3" -v depth="$4" \
        -v before="$6" -v after="$7" -v event_idx="$event_idx" -v frontend="$frontend" -v count=11 '
        $1 == 3 { # all other lines are remarks
            split(before, old, " "); split(after, new, " ")
            reads = new[1] - old[1]; interrupts = new[2] - old[2]
            for (i = 1; i <= count; i++) {
                split($(17 + i), part, "%=")
                us[i] = part[2]
                list = list (i > 1 ? ", " : "") part[2]
            }
            printf "\n{\"backend\": \"%s\", \"round\": %d, \"frontend\": \"%s\",", name, round, frontend
            printf " \"storage\": \"page-cache\", \"queues\": %d, \"iodepth\": %d, \"disks\": 1,", jobs, depth
            printf " \"rw\": \"randread\", \"block_size\": 4096, \"wait\": \"sleep\", \"event_idx\": %s,", event_idx
            printf " \"negotiated_event_idx\": %s, \"suppress\": true, \"driver_threads\": %d,", event_idx, jobs
            printf " \"iops\": %d, \"completions\": %d, \"notifications\": %d,", $8, reads, interrupts
            printf " \"completions_per_notification\": %.4f,", interrupts ? reads / interrupts : 0
            printf " \"batches\": [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],"
            printf " \"kicks_per_io\": 0, \"wakeups_per_io\": %.4f,", reads ? interrupts / reads : 0
            printf " \"p50_us\": %s, \"p99_us\": %s, \"p999_us\": %s, \"max_us\": %s,", us[4], us[8], us[10], $15
            printf " \"latency_us\": [%s], \"cpu_us_per_io\": %.4f,", list, (new[3] - old[3]) * 1e4 / reads
            printf " \"context_switches_per_io\": %.4f, \"rss_kib\": %d}", (new[4] - old[4]) / reads, new[5]
        }' <<<"$5")
    [ "${samples: -1}" = '}' ] || die "fio printed no figures: $5"
}

# write_samples COMMAND: writes all samples, for vhost-user-blk-bench render.
write_samples() {
    local note
    note="fio in Linux under $(qemu-system-x86_64 --version | head -n 1)"
    note+='; notifications are interrupts that the guest counted, with the second of ramp-up'
    has_kvm || note+='; QEMU emulates the CPUs (TCG): IOPS measure the emulator, but the notifications are real'
    note+='. Load before the report: '$(cut -d ' ' -f 1-3 /proc/loadavg)
    printf '{"schema": 2, "started": "%s", "machine": null, "command": ["%s"], "notes": ["%s"], "samples": [%s\n]}\n' \
        "$measured_at" "$1" "$note" "$samples"
}
