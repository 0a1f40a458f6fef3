#!/bin/bash
# install_deps.sh - finds out what is missing for building, testing or fetching a model, says so, and installs that with apt-get.
#
# usage: tools/install_deps.sh [--dry-run] build|model|check|neon...
#   build  C compiler, make, pkg-config, the libraries        model  python3 with pip, which carries the download
#   check  clang and its run-time library, python3            neon   cross compiler and emulator for AArch64
#
# What is there is found by trying it, not by asking the package manager: a compiler or library of the user's own is as good as Debian's.
# Nothing missing: nothing is said, and no privilege is needed.
set -u

dry=0
if [ "${1:-}" = --dry-run ]; then dry=1; shift; fi
cc=${CC:-cc}
missing=() optional=()

compiles() { # compiles COMPILER [FLAG...] <program: whether it compiles and links
    local out rc
    out=$(mktemp)
    "$@" -x c - -o "$out" >/dev/null 2>&1
    rc=$?
    rm -f "$out"
    return $rc
}

need() { # need PACKAGE COMMAND...: the package is missing unless the command succeeds
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}

has_compiler() { printf '#include <pthread.h>\n#include <stdio.h>\nint main(void) { return 0; }\n' | compiles $cc -pthread; }
has_library() { # has_library PKG-CONFIG-NAME PREPROCESSOR-TEXT
    pkg-config --exists "$1" || printf '%b\n' "$2" | $cc -E -
}
has_cross_compiler() { printf '#include <stdio.h>\nint main(void) { return 0; }\n' | compiles aarch64-linux-gnu-gcc -pthread; }
has_fuzzer() { printf 'int LLVMFuzzerTestOneInput(const char *p, unsigned long n) { return p && n > 9 ? 0 : 0; }\n' | compiles clang -fsanitize=fuzzer,address; }

for group; do
    case $group in
    build)
        if ! has_compiler; then missing+=(gcc libc6-dev); fi
        need make command -v make
        need pkg-config command -v pkg-config
        need libpcre2-dev has_library libpcre2-8 '#define PCRE2_CODE_UNIT_WIDTH 8\n#include <pcre2.h>'
        need libjansson-dev has_library jansson '#include <jansson.h>'
        pkg-config --exists libedit >/dev/null 2>&1 || optional+=(libedit-dev) # only line editing in chat needs it
        ;;
    model) need python3-pip python3 -m pip --version ;;
    check)
        need python3 command -v python3
        need clang command -v clang
        need libclang-rt-dev has_fuzzer
        ;;
    neon)
        if ! has_cross_compiler; then missing+=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross); fi
        need qemu-user command -v qemu-aarch64
        ;;
    *)
        echo "install_deps.sh: unknown group \"$group\"; known are build, model, check, neon" >&2
        exit 2
        ;;
    esac
done

wanted=("${missing[@]}" "${optional[@]}")
if [ ${#wanted[@]} -eq 0 ]; then exit 0; fi

as_root=()
reason=
if ! command -v apt-get >/dev/null; then
    reason="this system has no apt-get; install their equivalents"
elif [ "$(id -u)" -ne 0 ]; then
    if command -v sudo >/dev/null; then as_root=(sudo); else reason="not root and no sudo; run as root: apt-get install ${wanted[*]}"; fi
fi
if [ -n "$reason" ]; then
    if [ ${#missing[@]} -eq 0 ]; then # chat works without, so that is no reason to stop
        echo "Going on without ${optional[*]} (line editing in chat): $reason" >&2
        exit 0
    fi
    echo "missing Debian packages: ${wanted[*]} ($reason)" >&2
    exit 1
fi

echo "Installing Debian packages: ${wanted[*]}${as_root:+ (with sudo)}"
if [ $dry -eq 1 ]; then exit 0; fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# The lists of a fresh system are empty, and old lists name files that are gone.  sudo keeps the terminal for its question.
if ! "${as_root[@]}" apt-get update >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    echo "apt-get update failed; trying with the lists that are there" >&2
fi
if ! "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${wanted[@]}" >"$log" 2>&1; then
    tail -n 15 "$log" >&2
    echo "could not install Debian packages: ${wanted[*]}" >&2
    exit 1
fi
