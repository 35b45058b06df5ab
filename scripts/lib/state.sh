# shellcheck shell=bash
# Shows what a guest, its QEMU and its backend are doing when a script fails, so that a hang explains itself. Sourced
# before machine.sh, whose variables it reads.

# Prints the state of QEMU and of the backend. Both may be gone, or answer nothing.
show_state() {
    runs "$qemu_pid" || return 0
    show_threads QEMU "$qemu_pid"
    if runs "$backend_pid"; then
        show_threads "the backend" "$backend_pid"
        show_statistics "the backend's statistics" .
    fi
    show_monitor
    # Asking the backend wakes its IOThreads. If they go on now, they had missed a kick or a wakeup.
    if runs "$backend_pid"; then
        sleep 2
        show_statistics "the rings two seconds later" ' ring: '
    fi
}

runs() { [ -n "$1" ] && kill -0 "$1" 2>/dev/null; }

# show_threads NAME PID: prints the state and the CPU time (in ticks) of each thread.
show_threads() {
    local task name stat
    printf -- '--- the threads of %s\n' "$1" >&2
    for task in /proc/"$2"/task/*; do
        # A thread may end meanwhile.
        name=$(cat "$task/comm" 2>/dev/null) || continue
        stat=$(cat "$task/stat" 2>/dev/null) || continue
        # The name, in parentheses, may contain spaces.
        read -ra stat <<<"${stat##*) }"
        printf '%-16s state=%s user=%s system=%s wchan=%s\n' "$name" "${stat[0]}" "${stat[11]}" "${stat[12]}" \
            "$(cat "$task/wchan" 2>/dev/null)" >&2
    done
}

# show_statistics TITLE PATTERN: prints what the daemon counts now and where its rings stand, in lines that match. Waits
# up to five seconds.
show_statistics() {
    local log=$logs/backend.log printed tries
    # The signal would end another backend.
    [[ $(readlink "/proc/$backend_pid/exe") == */vhost-user-blk ]] || return 0
    printf -- '--- %s\n' "$1" >&2
    printed=$(stat -c %s "$log")
    kill -USR1 "$backend_pid"
    for ((tries = 0; tries < 50; tries++)); do
        sleep 0.1
        ! grep -q 'histogram:' < <(tail -c "+$((printed + 1))" "$log") || break
    done
    tail -c "+$((printed + 1))" "$log" | grep -- "$2" >&2 || true
}

# Prints whether the machine runs, where its CPUs are, and which interrupts wait for them (IRR).
show_monitor() {
    local cpu commands=("info status" "info registers -a")
    for ((cpu = 0; cpu < vcpus; cpu++)); do
        commands+=("info lapic $cpu")
    done
    printf -- "--- QEMU's monitor\n" >&2
    # No other register matters.
    perl "$repo/scripts/lib/monitor.pl" "$workspace/qmp.sock" "${commands[@]}" 2>&1 |
        grep -E '^(info|VM status|CPU#|[ER]IP=|ISR|IRR)|monitor|QEMU' >&2 || true
}
