#!/usr/bin/env python3
"""Key-value retrieval by the needle models: a dictionary of random keys and values, then one of its keys; the model writes the value.

The models continue a text by its longest match in context, so the answer is right exactly when attention reached the right position: `full`
must find every key, and a window of 256 positions none that lies before it.

usage: test_needle.py           4K and 16K positions, through the program
       test_needle.py --long    128K positions, twenty questions to one document (build/tests/long_needle)
"""
import json
import os
import random
import subprocess
import sys
import time

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
ASSETS = os.environ.get("SPILLWAY_ASSETS", os.path.join(ROOT, "..", "shared", "assets"))
BUILD = os.environ.get("SPILLWAY_BUILD", os.path.join(ROOT, "build"))
SPILLWAY = os.environ.get("SPILLWAY", os.path.join(BUILD, "spillway"))
MODEL = os.path.join(ASSETS, "models", "needle-d128-Q8_0.gguf")
VALUE_LEN = 36
passed = failed = 0


def report(name, ok, note):
    global passed, failed
    passed, failed = passed + ok, failed + (not ok)
    print(f"{'ok  ' if ok else 'FAIL'}  {name}: {note}", flush=True)


def word(rng):
    """32 random hexadecimal digits, grouped like a UUID: 36 bytes."""
    digits = "%032x" % rng.getrandbits(128)
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def make_prompt(n_keys, which, rng):
    pairs = [(word(rng), word(rng)) for _ in range(n_keys)]
    body = ",\n ".join(f'"{key}": "{value}"' for key, value in pairs)
    return "{%s}\n\n\"%s\": \"" % (body, pairs[which][0]), pairs[which][1]


def ask(prompt, ctx, *flags):
    cmd = [SPILLWAY, "run", "-m", MODEL, "-c", str(ctx), "-n", str(VALUE_LEN), "--temp", "0", "--chat-template", "none", "--json", *flags]
    done = subprocess.run(cmd, input=prompt.encode(), capture_output=True, timeout=600)
    if done.returncode != 0:
        raise RuntimeError(f"exit {done.returncode}: {done.stderr.decode(errors='replace').strip()[-300:]}")
    return json.loads(done.stdout)


def ordinary():
    for n_keys, ctx in ((48, 8192), (192, 20480)):
        rng = random.Random(n_keys)
        # The first key, one in the middle, one near the end: all of them outside the window and most outside the sink.
        for which in (0, n_keys // 2, n_keys - 8):
            prompt, value = make_prompt(n_keys, which, rng)
            began = time.time()
            r = ask(prompt, ctx, "--kv-policy", "full")
            note = f"{r['n_prompt']} tokens, {time.time() - began:.1f} s"
            report(f"full finds key {which} of {n_keys}", r["text"] == value, note if r["text"] == value else f"{note}: got {r['text']!r}, expected {value!r}")
        r = ask(prompt, ctx, "--kv-policy", "window", "--kv-sink", "64", "--kv-window", "256")
        report(f"window of 256 misses key {which} of {n_keys}", r["text"] != value, f"wrote {r['text']!r}")
        report("window reads none of the middle", r["kv"]["share_read"] == 0, f"share_read {r['kv']['share_read']}")


def long():
    program = os.path.join(BUILD, "tests", "long_needle")
    done = subprocess.run([program, MODEL, "1600", "20", "full", "window"], stdout=subprocess.PIPE, text=True)
    sums = dict(line.split(": ", 1) for line in done.stdout.splitlines() if line.startswith(("full: ", "window: ")))
    for policy, expected in (("full", 20), ("window", 0)):
        got = sums.get(policy, f"exit {done.returncode}")
        report(f"{policy} answers {expected} of 20 at 128K", got.startswith(f"{expected} of 20"), got)


if not os.path.exists(MODEL):
    print(f"skip  needle: no model {MODEL}")
    print("0 passed, 0 failed, 1 skipped")
    sys.exit(0)
try:
    long() if sys.argv[1:] == ["--long"] else ordinary()
except (RuntimeError, OSError, subprocess.TimeoutExpired, ValueError) as e:
    report("needle", False, str(e))
print(f"{passed} passed, {failed} failed, 0 skipped")
sys.exit(1 if failed else 0)
