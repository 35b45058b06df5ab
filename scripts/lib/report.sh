# shellcheck shell=bash
# The table that scripts/guest prints. Sourced.

report=''

# report_job NAME TERSE: adds a row from fio's terse format, version 3.
#
# Its fields: 5 error; of reads 7 KiB/s, 8 IOPS, and from 18 percentiles of the completion latency as
# "99.000000%=NUMBER" in us; of writes the same 41 fields later.
report_job() {
    report+=$(awk -F ';' -v name="$1" '
        function percentile(first, wanted,   i, part) {
            for (i = first; i < first + 20; i++) {
                split($i, part, "%=")
                if (part[1] + 0 == wanted) return part[2]
            }
            return "-"
        }
        $1 == 3 { # all other lines are remarks
            shift = name ~ /^write/ ? 41 : 0
            printf "%-20s %9.1f %9.1f %9s %9s\n", name, $(8 + shift) / 1000, $(7 + shift) / 1024,
                percentile(18 + shift, 50), percentile(18 + shift, 99)
        }' <<<"$2")$'\n'
}

print_report() {
    printf '\n%-20s %9s %9s %9s %9s\n' "fio in the guest" kIOPS MiB/s "p50 us" "p99 us"
    printf '%s' "$report"
    if [ "$backend" = daemon ]; then
        printf '\n%s\n' "vhost-user-blk --notify $notify"
        cat "$logs/backend.log"
    fi
}
