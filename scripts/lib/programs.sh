# shellcheck shell=bash
# Runs the test programs of the workspace, several at a time. Sourced after common.sh.
#
# Cargo runs one program after the other. But most of our tests wait: for a guest, a server, or a timeout. So the CPUs
# would be idle for a good part of the time.

# Programs that run at a time. Each of them runs as many tests at a time as there are CPUs.
readonly programs_at_a_time=${TEST_PROGRAMS:-2}

# The programs that take longest. They start first, so that no long one is left at the end.
readonly long_programs=(guest trouble process)

# What does not depend on the system: logic, properties, and what meets between our own threads.
readonly independent_programs=(aio device engine hostile pool structure)

readonly tab=$'\t'

# Logs of the running programs, by process group.
declare -A running=()

# without NAME...: removes lines of build_programs.
without() { grep -v "$(printf "^%s$tab\n" "$@")"; }

# Builds all tests. Prints a line per program, those that take longest first: its name, cargo's argument for it, the
# directory that it runs in, and its path, separated by tabs.
build_programs() {
    local built name
    built=$(cargo test --locked --workspace --no-run --message-format json-render-diagnostics) || return
    built=$(sed -nE 's/.*"manifest_path":"([^"]*)\/Cargo.toml","target":\{"kind":\["([a-z]*)"\],[^}]*"name":"([^"]*)".*"profile":\{[^}]*"test":true\}.*"executable":"([^"]*)".*/\3\t--\2=\3\t\1\t\4/p' <<<"$built" |
        sed 's/\t--lib=[^\t]*/\t--lib/' | sort)
    for name in "${long_programs[@]}"; do grep "^$name$tab" <<<"$built" || true; done
    without "${long_programs[@]}" <<<"$built"
}

# run_program NAME ARGUMENT DIRECTORY PATH ARGS...: runs a test program as cargo does, and prints what cargo prints.
run_program() {
    printf '     Running %s (%s)\n' "$1" "${4#"$repo/"}"
    (cd "$3" && "${@:4}") && return
    # shellcheck disable=SC2016 # the quotes are cargo's
    printf 'error: test failed, to rerun pass `%s`\n' "$2"
    return 101
}

# run_part PART: runs the loom models (models and their program), doc tests (doc), or a program of build_programs.
run_part() {
    local words
    IFS=$tab read -ra words <<<"$1"
    case ${words[0]} in
    models) "${words[1]}" loom ring::index || return 1 ;;
    doc) cargo test --locked --workspace --no-fail-fast --doc ;;
    *) run_program "${words[@]}" ;;
    esac
}

# Waits for a part to end, and prints its output as a whole. Returns its status.
finish_part() {
    local ended status=0
    wait -n -p ended "${!running[@]}" || status=$?
    cat "${running[$ended]}"
    rm "${running[$ended]}"
    unset "running[$ended]"
    return "$status"
}

# shellcheck disable=SC2317 # a trap calls it
end_parts() {
    local group
    for group in "${!running[@]}"; do
        kill -TERM -- "-$group" 2>/dev/null || true
        rm -f "${running[$group]}"
    done
}

# run_parts PART...: runs the parts, and prints the output of each when it ends. Returns 101 if tests have
# failed, and another status if something else has.
run_parts() {
    local log status result=0
    trap 'end_parts; exit 130' INT
    trap 'end_parts; exit 143' TERM HUP
    # With job control, each part is a process group, which can be ended as a whole.
    set -m
    while [ $# -ne 0 ] || [ "${#running[@]}" -ne 0 ]; do
        if [ $# -ne 0 ] && [ "${#running[@]}" -lt "$programs_at_a_time" ]; then
            log=$(mktemp)
            run_part "$1" >"$log" 2>&1 </dev/null &
            running[$!]=$log
            shift
            continue
        fi
        status=0
        finish_part || status=$?
        case $status:$result in
        0:* | 101:[1-9]*) ;;
        *) result=$status ;;
        esac
    done
    set +m
    return "$result"
}
