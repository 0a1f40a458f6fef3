#!/usr/bin/env python3
"""Check the order of the layers: which file may include which, and that files can be told apart and are not too long.

usage: check_includes.py [ROOT]

A file of src/ includes headers of its own folder, of a folder of a strictly lower level, and of include/; an application sees include/ and apps/;
an example sees include/ alone; tests, fuzz targets and benchmarks may include anything.  Every violation is one line, FILE:LINE: what.
"""
import os
import re
import sys

LEVELS = {"src/base": 0, "src/kern": 1, "src/model": 2, "src/dev": 2, "src/kv": 2, "src/measure": 2, "src/policy": 3, "src/plan": 4, "src/engine": 5}
SEES = {"include": ["include"], "apps": ["include", "apps"], "examples": ["include"]}
ANYTHING = ("tests", "fuzz", "bench")
TOPS = ("include", "src", "apps", "examples", "tests", "fuzz", "bench", "tools")
CODE = (".c", ".h", ".cu", ".cuh", ".py", ".sh")
MAX_LINES = 1500
INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]')


def code_files(root):
    """Paths of all source files, relative to root, sorted."""
    found = []
    for top in TOPS:
        for folder, dirs, names in os.walk(os.path.join(root, top)):
            dirs[:] = [d for d in dirs if not d.startswith((".", "__"))]
            found += [os.path.relpath(os.path.join(folder, n), root) for n in names if n.endswith(CODE)]
    return sorted(found)


def may_include(folder, other):
    """Whether a file of folder may include a header of other (both relative to the root)."""
    if folder.split("/")[0] in ANYTHING or other == "include":
        return True
    if folder in SEES:
        return other in SEES[folder]
    if folder not in LEVELS or other not in LEVELS:
        return False
    return folder == other or LEVELS[other] < LEVELS[folder]


def check_order(root, files):
    where = {}  # header's name -> its folder
    for f in files:
        if f.endswith((".h", ".cuh")):
            where[os.path.basename(f)] = os.path.dirname(f)
    bad, n = [], 0
    for f in files:
        if not f.endswith((".c", ".h", ".cu", ".cuh")):
            continue
        folder = os.path.dirname(f)
        if folder.startswith("src") and folder not in LEVELS:
            bad.append(f"{f}:1: folder {folder} has no level; known are {', '.join(sorted(LEVELS, key=LEVELS.get))}")
            continue
        for line, text in enumerate(open(os.path.join(root, f), encoding="utf-8"), 1):
            m = INCLUDE.match(text)
            if not m:
                continue
            kind, name = m.groups()
            other = where.get(os.path.basename(name))
            if other is None:
                if kind == '"':
                    bad.append(f"{f}:{line}: includes \"{name}\", which is no header of the project (system headers go in <>)")
                continue
            n += 1
            if "/" in name and folder not in ANYTHING:
                bad.append(f"{f}:{line}: includes \"{name}\" by path; names are unique, \"{os.path.basename(name)}\" will do")
            elif not may_include(folder, other):
                bad.append(f"{f}:{line}: a file of {folder} may not include {name} of {other}")
    return bad, f"{n} includes"


def check_names(root, files):
    seen, bad = {}, []
    for f in files:
        name = os.path.basename(f)
        if name in seen:
            bad.append(f"{f}:1: has the same name as {seen[name]}")
        seen.setdefault(name, f)
    return bad, f"{len(files)} files"


def check_lengths(root, files):
    bad, longest = [], 0
    for f in files:
        n = sum(1 for _ in open(os.path.join(root, f), encoding="utf-8"))
        longest = max(longest, n)
        if n > MAX_LINES:
            bad.append(f"{f}:{n}: {n} lines, at most {MAX_LINES} are allowed")
    return bad, f"longest {longest} lines"


def main():
    if len(sys.argv) > 2 or any(a.startswith("-") for a in sys.argv[1:]):
        sys.exit(__doc__.strip())
    root = sys.argv[1] if len(sys.argv) == 2 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
    files = code_files(root)
    if not files:
        sys.exit(f"check_includes.py: no source files under {root}")
    failed = 0
    checks = (("include order", check_order), ("unique file names", check_names), ("file lengths", check_lengths))
    for name, check in checks:
        bad, note = check(root, files)
        for line in bad:
            print(line)
        failed += bool(bad)
        print(f"{'FAIL' if bad else 'ok  '}  {name}: {note}")
    print(f"{len(checks) - failed} passed, {failed} failed, 0 skipped")
    sys.exit(1 if failed else 0)


main()
