# shellcheck shell=bash
# Starts a backend and a guest on it, and ends both in any case. Sourced after state.sh by scripts/guest, whose
# options (config, backend, image, notify, keep, extra) it reads.
#
# Sets workspace (image and socket; removed at the end), logs (kept) and vcpus. Both processes have their own sessions,
# so Ctrl-C only reaches the script, which then ends them in order.

backend_pid='' qemu_pid=''

boots_from_disk() { [[ $(config_options "$config" qemu-system-x86_64) == *bootindex* ]]; }

make_workspace() {
    workspace=$(mktemp -d "${TMPDIR:-/tmp}/vhost-user-blk.XXXXXX")
    trap 'clean_up $?' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    mkdir -p "$target/guest-logs"
    logs=$(mktemp -d "$target/guest-logs/$config.XXXXXX")
    vcpus=$(config_options "$config" qemu-system-x86_64 | sed -n 's/.*-smp \([0-9]*\).*/\1/p')
    vcpus=${vcpus:-1}
}

clean_up() {
    local status=$1 pid
    trap '' INT TERM HUP
    # A user who stops the script needs no explanation.
    [ "$status" -eq 0 ] || [ "$status" -gt 128 ] || show_state
    for pid in $qemu_pid $backend_pid; do
        kill "$pid" 2>/dev/null || true
    done
    wait 2>/dev/null || true
    [ "$status" -eq 0 ] || [ "$status" -gt 128 ] || show_logs
    if [ -n "$keep" ]; then
        say "kept $workspace"
    else
        rm -rf "$workspace"
    fi
}

# Prints the ends of the logs, among them the guest's console, that show why the script failed.
show_logs() {
    local log
    for log in "$logs"/*.log; do
        [ -s "$log" ] || continue
        printf -- '--- the end of %s\n' "$log" >&2
        tail -n 15 "$log" >&2
    done
}

make_image() {
    if [ -n "$image" ]; then
        image=$(realpath "$image")
    elif boots_from_disk; then
        say "making a disk that boots"
        "$repo/scripts/lib/make-boot-disk" "$workspace/disk.img" initrd-fio
    else
        say "making a disk of 256 MiB"
        # Data instead of holes, because reading a hole costs nothing.
        head -c 256M /dev/urandom >"$workspace/disk.img"
    fi
}

start_backend() {
    local options disk=${image:-disk.img} queues
    read -ra options <<<"$(common_options) $(config_options "$config" vhost-user-blk)"
    options=("${options[@]/#disk.img/"$disk"}")
    queues=$(sed -n 's/.*--num-queues \([0-9]*\).*/\1/p' <<<"${options[*]}")
    if [ "$backend" = qsd ]; then
        options=(qemu-storage-daemon --blockdev "driver=file,node-name=disk,filename=$disk"
            --export "type=vhost-user-blk,id=disk,node-name=disk,addr.type=unix,addr.path=vhost-user-blk.sock,writable=on,num-queues=${queues:-1}"
            "${extra[@]}")
    else
        options=("$target/release/vhost-user-blk" "${options[@]}" --notify "$notify" --stats "${extra[@]}")
        [ -z "$image" ] || [ -n "$shell" ] || options+=(--read-only)
    fi
    say "starting ${options[0]##*/}"
    (cd "$workspace" && exec setsid "${options[@]}") >"$logs/backend.log" 2>&1 </dev/null &
    backend_pid=$!
    until [ -S "$workspace/vhost-user-blk.sock" ]; do
        kill -0 "$backend_pid" 2>/dev/null || die "the backend did not start"
        sleep 0.02
    done
}

boot_guest() {
    local initrd=initrd-fio
    ! boots_from_disk || initrd=disk
    say "booting the guest: $config, $vcpus vCPU"
    coproc vm {
        cd "$workspace" && exec setsid "$repo/scripts/lib/run-guest" "$config" "$initrd" \
            -serial "file:$logs/console.log" -serial stdio -qmp unix:qmp.sock,server=on,wait=off 2>"$logs/qemu.log"
    }
    qemu_pid=$!
    exec {from_guest}<&"${vm[0]}" {to_guest}>&"${vm[1]}"
    guest_answer 300 # the guest is ready; this is slow if the CPUs are busy
}

# guest_answer SECONDS: waits for the guest's next answer, and sets guest_output and guest_status.
guest_answer() {
    local text deadline=$((SECONDS + $1)) seconds=$1
    read_until $'\036'
    guest_output=$text
    read_until $'\n'
    guest_status=$text
}

# read_until CHARACTER: a part of guest_answer. Sets `text` to what the guest says before this character. Checks meanwhile
# whether the guest still runs. The timeout of `read` is not used, because bash 5.2 loses a character that arrives just then.
read_until() {
    local character
    text=''
    while true; do
        until read -r -t 0 -u "$from_guest"; do
            # Without a backend, QEMU does the disk I/O itself.
            [ -z "$backend_pid" ] || kill -0 "$backend_pid" 2>/dev/null || die "the backend has ended"
            [ "$SECONDS" -lt "$deadline" ] || die "the guest has not answered for $seconds s"
            sleep 0.02
        done
        IFS= read -r -N 1 -u "$from_guest" character || die "QEMU has ended"
        [ "$character" != "$1" ] || break
        text+=$character
    done
}

# guest_run SECONDS COMMAND...: runs a command in the guest, returns its status and sets guest_output.
guest_run() {
    local seconds=$1
    shift
    printf '%s\n' "$*" >&"$to_guest"
    guest_answer "$seconds"
    return "$guest_status"
}

power_off() {
    printf 'poweroff -f\n' >&"$to_guest"
    wait "$qemu_pid" || die "QEMU failed"
    qemu_pid=''
}

stop_backend() {
    kill "$backend_pid"
    wait "$backend_pid" || die "the backend's exit status is $?"
    backend_pid=''
}

# Runs an interactive guest whose console is this terminal.
run_shell() {
    local initrd=initrd-fio
    ! boots_from_disk || initrd=disk
    (cd "$workspace" && GUEST_APPEND=guest.shell exec "$repo/scripts/lib/run-guest" "$config" \
        "$initrd" -chardev stdio,id=console,mux=on,signal=off -serial chardev:console -mon console)
}
