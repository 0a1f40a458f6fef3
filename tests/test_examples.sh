#!/bin/bash
# Builds the examples as a user would, against an installed copy and with the flags of pkg-config, shared and static, and runs them.
#
# SPILLWAY_BUILD names the build folder (default build), CC the compiler.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
build=${SPILLWAY_BUILD:-build}
assets=${SPILLWAY_ASSETS:-../shared/assets}
passed=0 failed=0 skipped=0
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

check() { # check NAME COMMAND...: one test; what the command printed is shown when it fails
    local name=$1
    shift
    if "$@" >"$tmp/log" 2>&1; then
        passed=$((passed + 1))
        echo "ok    $name"
    else
        failed=$((failed + 1))
        echo "FAIL  $name"
        sed 's/^/      /' "$tmp/log"
    fi
}

export PKG_CONFIG_PATH=$tmp/prefix/lib/pkgconfig
flags="-std=c11 -Wall -Wextra -Werror -O1"
shared() { ${CC:-cc} $flags "examples/$1.c" -o "$tmp/$1" $(pkg-config --cflags --libs spillway) -Wl,-rpath,"$tmp/prefix/lib"; }
static() { ${CC:-cc} $flags "examples/$1.c" -o "$tmp/$1-static" $(pkg-config --cflags spillway) "$tmp/prefix/lib/libspillway.a" $(pkg-config --static --libs-only-l spillway | sed 's/-lspillway//g') -pthread; }
has() { # has TEXT COMMAND...: succeeds, and its standard output holds TEXT
    local text=$1 out
    shift
    out=$("$@") || { echo "$* ended with $?; it wrote: $out"; return 1; }
    case $out in *"$text"*) ;; *) echo "$* wrote: $out; expected to hold: $text"; return 1 ;; esac
}
refuses() { # usage or error: an exit code, something on standard error, nothing on standard output
    local want=$1 out rc
    shift
    out=$("$@" 2>"$tmp/err")
    rc=$?
    [ $rc -eq "$want" ] && [ -z "$out" ] && [ -s "$tmp/err" ] || { echo "$* ended with $rc, expected $want; wrote: $out $(cat "$tmp/err")"; return 1; }
}

check "make install" make -s BUILD="$build" PREFIX="$tmp/prefix" install
if [ $failed -gt 0 ]; then
    echo "0 passed, 1 failed, 0 skipped"
    exit 1
fi
for example in examples/*.c; do
    name=$(basename "$example" .c)
    check "$name builds against the shared library" shared "$name"
    check "$name builds against the static library" static "$name"
    check "$name without arguments prints its usage" refuses 2 "$tmp/$name"
    check "$name with a missing model" refuses 1 "$tmp/$name" "$tmp/none.gguf" 4 5 # a prompt and a number, in either order
done

story=$assets/models/stories15M-Q8_0.gguf
if [ -e "$story" ]; then
    check "generate writes a story" has "a little girl" "$tmp/generate_text" "$story" "Once upon a time, there was" 40
    check "generate, static: the same" has "$("$tmp/generate_text" "$story" "Once upon a time" 24)" "$tmp/generate_text-static" "$story" "Once upon a time" 24
    check "fork: equal bits, then two ways" has "equal bit for bit" "$tmp/fork" "$story" "Once upon a time, there was" 16
    check "batch: a row does not see its neighbours" has "equal bit for bit" "$tmp/batch" "$story" 24 "Once upon a time" "The dog" "Tom and Lily went to the park. They saw a big" "A"
else
    skipped=4
    echo "skip  running the examples: no model $story"
fi

echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
