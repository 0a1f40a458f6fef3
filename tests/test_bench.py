#!/usr/bin/env python3
"""spillway bench as a user meets it: the tests' names, the fields of every format, depths that are read and filled, the sweep, the hash, refusals.

Environment: SPILLWAY          the program (default build/spillway)
             SPILLWAY_ASSETS   test models (default ../shared/assets)
Nothing here looks at how fast anything is.  Prints one line a test, like the C tests, and exits non-zero when one fails.
"""
import csv, io, json, os, pty, re, subprocess, sys, tempfile

PROGRAM = os.path.abspath(os.environ.get("SPILLWAY", "build/spillway"))
ASSETS = os.path.abspath(os.environ.get("SPILLWAY_ASSETS", "../shared/assets"))
HERE = os.path.dirname(os.path.abspath(__file__))
TINY = os.path.join(HERE, "data", "tiny-qwen3.gguf")
counts = {"ok": 0, "FAIL": 0, "skip": 0}

# llama-bench's, in its order, and ours.
FIELDS = """build_commit build_number cpu_info gpu_info backends model_filename model_type model_size model_n_params n_batch n_ubatch n_threads cpu_mask cpu_strict
poll type_k type_v n_gpu_layers n_cpu_moe split_mode main_gpu no_kv_offload flash_attn devices tensor_split tensor_buft_overrides use_mmap use_direct_io embeddings
no_op_offload no_host n_prompt n_gen n_depth test_time avg_ns stddev_ns avg_ts stddev_ts""".split()
OWN = "isa kv_policy filled share_read repack_bytes repack_ms logits_hash".split()
SWEEP_FIELDS = """n_kv_max n_batch n_ubatch flash_attn n_gpu_layers n_threads n_threads_batch pp tg n_kv t_pp speed_pp t_tg speed_tg model_filename type_k
type_v""".split()


class Skip(Exception):
    pass


def story():
    path = os.path.join(ASSETS, "models", "stories15M-Q8_0.gguf")
    if not os.path.exists(path):
        raise Skip(f"{path} is missing")
    return path


def equal(got, want, what=""):
    if got != want:
        raise AssertionError(f"{what}: got {got!r}, expected {want!r}")


def bench(*args, code=0, env=None):
    p = subprocess.run([PROGRAM, "bench", *map(str, args)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=300,
                       env=dict(os.environ, **(env or {})))
    equal(p.returncode, code, f"{args}: {p.stderr.decode()[:300]}")
    return p.stdout.decode(), p.stderr.decode()


def records(*args, **kw):
    return [json.loads(line) for line in bench(*args, "-o", "jsonl", **kw)[0].splitlines()]


def refused(*args, needles=(), code=2):
    out, err = bench(*args, code=code)
    equal((out, len(err.splitlines())), ("", 1), f"{args}: {err[:300]!r}")
    for n in needles:
        if str(n) not in err:
            raise AssertionError(f"{args}: {n!r} is not in {err!r}")


def table(text):
    """Head and rows of the first table in a text, and the line that ends the text."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    equal(all(re.fullmatch("-+:?", c) for c in cells[1]), True, "the line below the head")
    return cells[0], cells[2:], text.splitlines()[-1]


SMALL = ("-m", TINY, "-p", 16, "-n", 4, "-r", 3, "-t", 1)


def test_table():
    head, rows, last = table(bench(*SMALL, "-pg", "8,2", "-d", "0,300")[0])
    equal(head, ["model", "size", "params", "backend", "threads", "test", "t/s"])
    equal([r[5] for r in rows], ["pp16", "tg4", "pp8+tg2", "pp16 @ d300", "tg4 @ d300", "pp8+tg2 @ d300"])
    for r in rows:
        equal(bool(re.fullmatch(r"qwen3 \S+ \S.*", r[0]) and re.fullmatch(r"[\d.]+ MiB", r[1]) and re.fullmatch(r"[\d.]+ M", r[2])), True, r)
        equal((r[3], r[4], bool(re.fullmatch(r"\d+\.\d\d \u00b1 \d+\.\d\d", r[6]))), ("CPU", "1", True), r)
    equal(bool(re.fullmatch("logits_hash: [0-9a-f]{16}", last)), True, last)


def test_table_shows_what_was_asked_for():
    head, rows, _ = table(bench(*SMALL, "-b", 8, "-ctk", "f32", "-ctv", "f32", "--kv-policy", "window", "--fill", "-d", "0,500")[0])
    equal(head, ["model", "size", "params", "backend", "threads", "n_batch", "type_k", "type_v", "kv_policy", "filled", "test", "t/s"])
    equal([r[5:11] for r in rows], [["8", "f32", "f32", "window", filled, f"{x}{d}"] for filled, d in (("no", ""), ("yes", " @ d500")) for x in ("pp16", "tg4")])


def test_defaults():
    equal([(r["n_prompt"], r["n_gen"], r["n_depth"], r["n_batch"], r["type_k"], len(r["samples_ns"])) for r in records("-m", TINY)],
          [(512, 0, 0, 512, "f16", 5), (0, 128, 0, 512, "f16", 5)])


def test_formats_agree():
    listed = records(*SMALL)
    out, err = bench(*SMALL, "-o", "json")
    equal(bool(re.fullmatch("logits_hash: [0-9a-f]{16}\n", err)), True, err)
    array = json.loads(out)
    equal(json.loads(bench(*SMALL, "--json")[0])[0].keys(), array[0].keys(), "--json")
    rows = list(csv.DictReader(io.StringIO(bench(*SMALL, "-o", "csv")[0])))
    equal([len(x) for x in (listed, array, rows)], [2, 2, 2])
    for x in (*listed, *array):
        equal(list(x), FIELDS + ["samples_ns", "samples_ts"] + OWN)
    for x in rows:
        equal(list(x), FIELDS + OWN)
    for key in ("model_filename", "n_prompt", "n_gen", "n_depth", "n_threads", "isa", "kv_policy", "logits_hash", "model_n_params"):
        for a, b, c in zip(listed, array, rows):
            equal((a[key], c[key]), (b[key], str(b[key])), key)


def test_values():
    for r in records(*SMALL, "-d", 40):
        n = r["n_prompt"] + r["n_gen"]
        equal((len(r["samples_ns"]), len(r["samples_ts"]), r["model_filename"], r["n_depth"]), (3, 3, TINY, 40))
        equal(abs(r["avg_ns"] - sum(r["samples_ns"]) / 3) <= 1, True, "mean of the times")
        for ns, ts in zip(r["samples_ns"], r["samples_ts"]):
            equal(abs(ts * ns / (1e9 * n) - 1) < 1e-3, True, f"{n} tokens in {ns} ns are not {ts} tokens/s")
        mean = sum(r["samples_ts"]) / 3
        sd = (sum((t - mean) ** 2 for t in r["samples_ts"]) / 2) ** 0.5
        equal((abs(r["avg_ts"] / mean - 1) < 1e-6, abs(r["stddev_ts"] - sd) <= 1e-6 * mean), (True, True), "mean and deviation of the rates")
        equal((r["share_read"], r["filled"], r["kv_policy"]), (1, False, "full"))
    equal([r["stddev_ns"] for r in records("-m", TINY, "-p", 4, "-n", 0, "-r", 1)], [0], "one sample has no deviation")


def hashes(*args, **kw):
    return {(r["n_prompt"], r["n_gen"], r["n_depth"]): r["logits_hash"] for r in records(*args, **kw)}


def test_hash():
    want = hashes(*SMALL, "-d", "0,200")
    equal(len(set(want.values())), 4, "different tests, different hashes")
    for more in ((), ("-t", 3), ("-b", 7), ("-r", 1, "--no-warmup"), ("-d", 50)):
        got = hashes(*SMALL, "-d", "200", "-d", "0", *more)
        equal({k: got[k] for k in want}, want, str(more))
    alone = hashes("-m", TINY, "-p", 0, "-n", 4, "-r", 2, "-d", 200)
    equal(alone[0, 4, 200], want[0, 4, 200], "a test alone")
    equal(hashes(*SMALL, "-ctk", "f32", "-ctv", "f32") == hashes(*SMALL), False, "rows that are not rounded")
    total = [bench(*SMALL)[0].splitlines()[-1] for _ in range(2)]
    equal(total[0], total[1], "the run's hash")


def test_fill():
    filled = records(*SMALL, "-d", "0,1000", "--fill")
    equal([r["filled"] for r in filled], [False, False, True, True])
    equal([r["filled"] for r in records(*SMALL, "-d", "0,1000")], [False] * 4)
    again = hashes(*SMALL, "-d", "600,1000", "--fill")
    for r in filled[2:]:
        equal(again[r["n_prompt"], r["n_gen"], 1000], r["logits_hash"], "filled in one piece or in two")
    equal(filled[3]["logits_hash"] == hashes(*SMALL, "-d", 1000)[0, 4, 1000], False, "filled or read")
    text = bench(*SMALL, "-d", 100, "--fill")[0]
    equal("made up (--fill)" in text, True, text)
    equal("fill" in bench(*SMALL, "-d", 100)[0], False)


def test_policy():
    r = records("-m", TINY, "-p", 0, "-n", 4, "-r", 2, "-d", 1000, "--kv-policy", "window", "--kv-sink", 8, "--kv-window", 32)[0]
    equal((r["kv_policy"], r["share_read"]), ("window", 0))


def test_lists():
    r = records("-m", TINY, "-m", f"{TINY},{TINY}", "-p", "4,8", "-n", "1-3", "-r", 1, "-t", "1,2", "-b", 4, "--no-warmup")
    equal(len(r), 3 * 2 * 5)
    equal([(x["n_prompt"], x["n_gen"]) for x in r[:5]], [(4, 0), (8, 0), (0, 1), (0, 2), (0, 3)])
    equal(sorted({x["n_threads"] for x in r}), [1, 2])
    equal([x["n_prompt"] for x in records("-m", TINY, "-p", "1-8*2", "-p", "10-30+10", "-n", 0, "-r", 1)], [1, 2, 4, 8, 10, 20, 30])
    equal([x["type_k"] for x in records("-m", TINY, "-p", 4, "-n", 0, "-r", 1, "-ctk", "f16,f32", "-ctv", "f16,f32")], ["f16", "f32"])


SWEEP = ("-m", TINY, "--sweep", "-c", 200, "-p", 64, "-n", 8, "-t", 1)


def test_sweep():
    head, rows, last = table(bench(*SWEEP)[0])
    equal(head, ["PP", "TG", "N_KV", "T_PP s", "S_PP t/s", "T_TG s", "S_TG t/s"])
    equal([r[:3] for r in rows], [["64", "8", str(d)] for d in (0, 64, 128)])
    equal(bool(re.fullmatch("logits_hash: [0-9a-f]{16}", last)), True, last)
    want = records(*SWEEP)
    for r in want:
        equal(list(r), SWEEP_FIELDS + OWN)
        equal((r["pp"], r["tg"], r["n_kv_max"], r["filled"]), (64, 8, 200, False))
        equal(abs(r["speed_pp"] * r["t_pp"] / 64 - 1) < 1e-3 and abs(r["speed_tg"] * r["t_tg"] / 8 - 1) < 1e-3, True, r)
    # A sweep's depths are those of the tests: the same tokens come first.
    steps = records(*SWEEP, "--sweep-step", 128)
    equal([s["n_kv"] for s in steps], [0, 128])
    equal([s["logits_hash"] for s in steps], [want[0]["logits_hash"], want[2]["logits_hash"]])
    equal([s["filled"] for s in records(*SWEEP, "--sweep-step", 128, "--fill")], [False, True])
    equal([s["n_kv"] for s in json.loads(bench(*SWEEP, "-o", "json")[0])], [0, 64, 128])


def test_refusals():
    refused(needles=("-m",))
    refused("-m", TINY, "-p", "abc", needles=("-p", "abc", "whole numbers"))
    refused("-m", TINY, "-p", "1,", needles=("-p", "'1,'"))
    refused("-m", TINY, "-p", "-5", needles=("-p",))
    refused("-m", TINY, "-d", "9-5", needles=("-d", "9-5"))
    refused("-m", TINY, "-p", "1-1000", needles=("-p", "32"))
    refused("-m", TINY, "-t", "1,257", needles=("-t", "256"))
    refused("-m", TINY, "-b", 0, needles=("-b", "8192"))
    refused("-m", TINY, "-r", 0, needles=("-r",))
    refused("-m", TINY, "-pg", "5", needles=("-pg", "pairs"))
    refused("-m", TINY, "-p", 0, "-n", 0, needles=("no test",))
    refused("-m", TINY, "-o", "sql", needles=("-o", "md, csv, json, jsonl", "sql"))
    refused("-m", TINY, "-ctk", "q4_0", needles=("-ctk", "f16, f32, q8_0", "q4_0"))
    refused("-m", TINY, "-ctk", "q8_0", needles=("-ctk", "-ctv", "same"))
    refused("-m", TINY, "-ctk", "q8_0", "-ctv", "f32", needles=("-ctk", "-ctv", "same"))
    refused("-m", TINY, "--kv-policy", "magic", needles=("full", "magic"))
    refused("-m", TINY, "--sweep", "-p", "1,2", needles=("-p", "one value"))
    refused("-m", TINY, "--sweep", "-d", "8", needles=("-d",))
    refused("-m", TINY, "--sweep", "-n", "0", needles=("-n",))
    refused("-m", TINY, "--sweep", "-c", "100", needles=("-c", "512", "100"), code=1)
    refused("-m", TINY, "--sweeep", needles=("--sweep",))
    refused("-m", TINY, "-pgg", "1,2", needles=("-pg",))
    refused("-m", TINY, "--kernels", needles=("--kernels", "-m"))
    refused("--machine", "-o", "csv", needles=("--machine", "json"))
    refused("-m", "none.gguf", needles=("none.gguf",), code=1)
    refused("-m", TINY, "-d", 1 << 30, "--fill", needles=("memory", "needed", "available"), code=1)


def test_progress_on_a_terminal_only():
    args = (*SMALL, "-d", 2000)
    master, slave = pty.openpty()
    p = subprocess.Popen([PROGRAM, "bench", *map(str, args)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=slave)
    out = p.communicate(timeout=300)[0].decode()
    os.close(slave)
    shown = b""
    while True:
        try:
            more = os.read(master, 65536)
        except OSError:
            break
        shown += more
        if not more:
            break
    os.close(master)
    shown = shown.decode()
    equal((p.returncode, "reading up to the depth [" in shown, "pp16 @ d2000 [" in shown, "[" in out), (0, True, True, False), shown[:200])
    equal(bench(*args)[1], "")


def test_beyond_the_trained_context():
    err = bench("-m", story(), "-p", 0, "-n", 2, "-r", 1, "-d", 300, "--fill")[1]
    equal((err.count("warning"), "302" in err, "256" in err), (1, True, True), err)


def test_real_model_and_every_set_of_kernels():
    args = ("-m", story(), "-p", 24, "-n", 3, "-r", 2, "-d", "0,100", "--fill")
    r = records(*args)
    equal([x["filled"] for x in r], [False, False, True, True])
    equal(r[0]["model_type"].endswith("Q8_0") and r[0]["model_type"].startswith("llama "), True, r[0]["model_type"])
    equal({x["isa"] for x in records(*args, env={"SPILLWAY_ISA": "scalar"})}, {"scalar"})


def test_synthetic_models():
    """tools/make_model.py: files of every type and architecture load and give finite numbers; the same seed gives the same file."""
    tool = os.path.join(HERE, "..", "tools", "make_model.py")
    if subprocess.run([sys.executable, "-c", "import gguf, numpy"], stderr=subprocess.DEVNULL).returncode:
        raise Skip("the packages numpy and gguf are missing")
    text = bytes(range(32, 127)) * 8
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "made.gguf")

        def make(*flags, code=0):
            p = subprocess.run([sys.executable, tool, path, *map(str, flags)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            equal(p.returncode, code, f"{flags}: {p.stderr.decode()[-300:]}")
            return p.stderr.decode()

        shape = ("--layers", 2, "--embd", 256, "--heads", 4, "--kv-heads", 2, "--ff", 512, "--vocab", 300, "--ctx", 512)
        for i, kind in enumerate(("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q4_K", "Q6_K", "F16", "BF16", "F32")):
            arch = ("llama", "qwen2", "qwen3")[i % 3]
            make("--arch", arch, *shape, "--type", kind, "--type-of", "blk.1.ffn_down.*=Q8_0", "--seed", i)
            p = subprocess.run([PROGRAM, "inspect", path, "--json"], stdout=subprocess.PIPE)
            seen = json.loads(p.stdout)
            types = {t["name"]: t["type"] for t in seen["tensors"]}
            equal((seen["architecture"], seen["n_vocab"], types["blk.0.ffn_up.weight"], types["blk.1.ffn_down.weight"]), (arch, 300, kind, "Q8_0"))
            p = subprocess.run([PROGRAM, "eval", "ppl", "-m", path, "-c", "256", "--json"], input=text, stdout=subprocess.PIPE)
            ppl = json.loads(p.stdout)["ppl"]
            equal(ppl is not None and 10 < ppl < 1e9, True, f"{kind}: perplexity {ppl}")
            equal(len(records("-m", path, "-p", 8, "-n", 2, "-r", 1, "-d", 64, "--fill")), 2)
        first = open(path, "rb").read()
        make("--arch", "qwen3", *shape, "--type", "F32", "--type-of", "blk.1.ffn_down.*=Q8_0", "--seed", 8)
        equal(open(path, "rb").read() == first, True, "the same seed")
        equal("Q5_0, not Q4_K" in make("--arch", "llama", *shape, "--embd", 96, "--type", "Q4_K"), True, "rows that do not fill a block")
        make("--arch", "llama", "--layers", 2, code=1)
        make("--arch", "llama", *shape, "--type-of", "a=Q3_X", code=2)


def main():
    if not os.path.exists(PROGRAM):
        print(f"FAIL  {PROGRAM} is missing: build it first\n0 passed, 1 failed, 0 skipped")
        return 1
    for name, test in [(k, v) for k, v in globals().items() if k.startswith("test_")]:
        if len(sys.argv) > 1 and not any(a in name for a in sys.argv[1:]):
            continue
        what, note = "ok", ""
        try:
            test()
        except Skip as e:
            what, note = "skip", f": {e}"
        except Exception as e:
            what = "FAIL"
            print(f"{name}: {type(e).__name__}: {str(e)[:1000]}", file=sys.stderr, flush=True)
        counts[what] += 1
        print(f"{what:5s} {name}{note}", flush=True)
    print(f"{counts['ok']} passed, {counts['FAIL']} failed, {counts['skip']} skipped")
    return 1 if counts["FAIL"] else 0


if __name__ == "__main__":
    sys.exit(main())
