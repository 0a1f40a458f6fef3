#!/bin/bash
# Installs into an empty folder and looks whether everything that was promised is there, says the right thing, and goes away again.
#
# SPILLWAY_BUILD names the build folder (default build).  Run by make, the flags come from that make, so nothing is rebuilt.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
build=${SPILLWAY_BUILD:-build}
passed=0 failed=0
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
same() { [ "$1" = "$2" ] || { printf 'got:\n%s\nexpected:\n%s\n' "$1" "$2"; return 1; }; }

run_make() { make -s BUILD="$build" PREFIX=/opt/spillway DESTDIR="$tmp/root" "$@"; }
root=$tmp/root/opt/spillway
version=$(sed -n 's/^#define SPW_VERSION "\(.*\)"/\1/p' include/spillway.h)
header_functions() { cat include/*.h | grep -v '^typedef' | grep -o 'spw_[a-z0-9_]*(' | tr -d '(' | LC_ALL=C sort -u; }

files() { (cd "$root" && find . -type f -o -type l | LC_ALL=C sort); }
expected_files="./bin/spillway
./include/spillway.h
./include/spillway_bench.h
./lib/libspillway.a
./lib/libspillway.so
./lib/libspillway.so.${version%%.*}
./lib/libspillway.so.$version
./lib/pkgconfig/spillway.pc
./share/man/man1/spillway.1"
exported() { nm -D --defined-only "$root/lib/libspillway.so" | awk '{ print $3 }' | LC_ALL=C sort -u; }
soname() { objdump -p "$root/lib/libspillway.so" | awk '$1 == "SONAME" { print $2 }'; }
pc() { PKG_CONFIG_PATH=$root/lib/pkgconfig pkg-config "$@" spillway; }
as_cxx() { # the header is C++ clean: needs a C++ front end
    printf '#include <spillway.h>\n#include <spillway_bench.h>\nint main() { return spw_version() ? 0 : 1; }\n' >"$tmp/t.cc"
    "$1" -std=c++11 -Wall -Wextra -Werror -I"$root/include" -fsyntax-only "$tmp/t.cc"
}
nothing_left() { same "$(find "$root" ! -type d)" ""; }
up_to_date() { make -q BUILD="$build" program; }

check "make install" run_make install
if [ $failed -gt 0 ]; then
    echo "0 passed, 1 failed, 0 skipped"
    exit 1
fi
check "installs these files and no others" same "$(files)" "$expected_files"
check "the program runs and says its version" same "$("$root/bin/spillway" --version 2>&1 | head -n 1 | cut -d' ' -f1,2)" "spillway $version"
check "the shared library exports what the header declares" same "$(exported)" "$(header_functions)"
check "its soname" same "$(soname)" "libspillway.so.${version%%.*}"
check "pkg-config: version" same "$(pc --modversion 2>&1)" "$version"
check "pkg-config: flags name the prefix" same "$(pc --cflags --libs 2>&1 | xargs)" "-I/opt/spillway/include -L/opt/spillway/lib -lspillway"
cxx=$(command -v g++ || command -v clang++)
skipped=0
if [ -n "$cxx" ]; then
    check "the header is C++ clean" as_cxx "$cxx"
else
    skipped=1
    echo "skip  the header is C++ clean: no C++ compiler"
fi
check "the build is up to date afterwards" up_to_date
check "make uninstall" run_make uninstall
check "nothing is left" nothing_left

echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
