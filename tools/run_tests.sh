#!/bin/bash
# run_tests.sh - runs tests and adds up their closing lines.
#
# usage: tools/run_tests.sh BUILD NAME...
#   NAME  test_x       the program BUILD/tests/test_x
#         replay_x     the program BUILD/fuzz/replay_x on the corpus fuzz/corpus/x
#         test_x.py, test_x.sh   the script of that name in tests/
#
# Programs run several at a time, TEST_JOBS (as many as there are processors); scripts, which build and install, one after the other.  What they print comes in the order of
# their names all the same.
#
# A test's last line is "N passed, N failed, N skipped".  One that dies, ends without such a line, or reports failure only by its exit code,
# counts as one failure.  Of a test that passes, the lines about skips and the closing line are shown; of one that fails, everything.
# COUNTS=FILE appends the sum to FILE as three numbers, for a caller that adds up several runs; TEST_TIMEOUT is in seconds; RUNNER is a command that
# runs the programs test_x (an emulator).
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
if [ $# -lt 2 ]; then
    echo "run_tests.sh: no tests are named; usage: tools/run_tests.sh BUILD NAME..." >&2
    exit 2
fi
build=$1
shift

case $build in /*) root=$build ;; *) root=$PWD/$build ;; esac
export SPILLWAY=$root/spillway
export SPILLWAY_BUILD=$root
export MODELS=${MODELS:-$PWD/build/models}
[ -n "${SPILLWAY_ASSETS:-}" ] || [ ! -d ../shared/assets ] || export SPILLWAY_ASSETS=$PWD/../shared/assets
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=1:strict_string_checks=1:allocator_may_return_null=1}
export UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1}
export TSAN_OPTIONS=${TSAN_OPTIONS:-halt_on_error=1}

if [ -n "${RUNNER:-}" ]; then export TEST_EMULATED=1; fi

jobs=${TEST_JOBS:-$(nproc)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0 skipped=0 shown=0

# Runs a test: what it prints goes to $work/NUMBER.log, and when it has ended "passed failed skipped seconds note" to $work/NUMBER.sum.
run() { # run NUMBER NAME
    local log=$work/$1.log name=$2 cmd began rc seconds p=0 f=0 s=0 note=
    case $name in
    *.py) cmd=(python3 "tests/$name") ;;
    *.sh) cmd=(bash "tests/$name") ;;
    replay_*) cmd=("$root/fuzz/$name" "fuzz/corpus/${name#replay_}") ;;
    *) cmd=(${RUNNER:-} "$root/tests/$name") ;; # of several words
    esac
    began=$EPOCHREALTIME
    timeout "${TEST_TIMEOUT:-900}" "${cmd[@]}" >"$log" 2>&1 </dev/null
    rc=$?
    seconds=$(LC_ALL=C awk -v a="$began" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }')
    if [[ $(tail -n 1 "$log") =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed(,\ ([0-9]+)\ skipped)?$ ]]; then
        p=${BASH_REMATCH[1]} f=${BASH_REMATCH[2]} s=${BASH_REMATCH[4]:-0}
        if ((rc != 0 && f == 0)); then f=1 note="  (exit code $rc)"; fi
    else
        f=1 note="  (exit code $rc, no closing line)"
        if ((rc == 124)); then note="  (stopped after ${TEST_TIMEOUT:-900} s)"; fi
    fi
    echo "$p $f $s $seconds $note" >"$work/$1.new"
    mv "$work/$1.new" "$work/$1.sum"
}

# Shows the tests that have ended, as far as all before them have.
show() {
    local p f s seconds note
    while [ -e "$work/$shown.sum" ]; do
        read -r p f s seconds note <"$work/$shown.sum"
        if ((f > 0)); then
            cat "$work/$shown.log"
        else
            grep -E '^skip ' "$work/$shown.log" | sed 's/^/      /'
        fi
        printf '%-5s %-24s %d passed, %d failed, %d skipped  [%s s]%s\n' "$( ((f > 0)) && echo FAIL || echo ok)" "${names[shown]}" "$p" "$f" "$s" "$seconds" "${note:+  $note}"
        passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s)) shown=$((shown + 1))
    done
}

names=("$@")
for ((i = 0; i < ${#names[@]}; i++)); do
    case ${names[i]} in
    *.py | *.sh)
        wait
        run "$i" "${names[i]}"
        ;;
    *)
        while (($(jobs -rp | wc -l) >= jobs)); do wait -n; done
        run "$i" "${names[i]}" &
        ;;
    esac
    show
done
wait
show

[ -z "${COUNTS:-}" ] || echo "$passed $failed $skipped" >>"$COUNTS"
echo "$passed passed, $failed failed, $skipped skipped"
((failed == 0 && shown == ${#names[@]}))
