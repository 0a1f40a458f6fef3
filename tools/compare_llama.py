#!/usr/bin/env python3
"""Compare the speed of `spillway bench` with llama.cpp: same GGUF files, same threads, f16 KV, in the same minutes.

    tools/compare_llama.py --models a.gguf b.gguf --out results.jsonl             # one round of every test, appended to results.jsonl
    tools/compare_llama.py --models a.gguf --tests tg@8192 --out results.jsonl    # one more round of one test
    tools/compare_llama.py --models a.gguf --flags "--kv-policy adaptive" --out sparse.jsonl   # spillway with other flags
    tools/compare_llama.py --report results.jsonl                                 # the table of everything measured so far

Needs PyPI's llama-cpp-python, built from source on this machine so that llama.cpp uses all of its instructions; --report needs nothing.  Each test of a
round is run by both programs one after the other, llama.cpp with flash attention off and on; the better one counts, row by row.  From the second round on,
the one that is behind by more than a third is left out.

The tests:
  tg@D       generate tokens behind D positions
  prefill@N  read a prompt of N tokens.  For both programs the time is added up from batches of 512 tokens measured at a few depths (--knots) and
             interpolated linearly between them, because the whole prompt takes llama.cpp up to half an hour
  read@N     really read a prompt of N tokens: what prefill@N is checked against

What is in the context below the depth: with spillway what `--fill` makes, with llama.cpp the state of a short prompt, copied as often as needed and moved to its
positions.  Both read as many distinct bytes as a real context has.
"""
import argparse
import contextlib
import fcntl
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time

BATCH = 512
TESTS = "tg@0,tg@8192,tg@32768,prefill@2048,prefill@16384,prefill@32768"
KNOTS = "0,1536,7680,15872,32256"
BASE = 128  # tokens of the prompt whose state is copied
DISTURBED = 0.15  # cores kept busy by others, from which on a measurement counts only if there is no better one
PROMPTS = (2048, 16384, 32768, 65536, 131072)  # prompts whose time is added up when their batches were measured, besides those that were also really read
VARIANTS = {0: "fa off", 1: "fa on"}


def fail(message):
    sys.exit(f"compare_llama.py: {message}")


# ---- llama.cpp, in a process of its own --------------------------------------------------------------------------------


class Peer:
    """One model in llama.cpp.  A context lives for one step only: the KV of two would not fit beside a large model."""

    def __init__(self, path, threads):
        import ctypes

        import llama_cpp as ll

        self.ll, self.ctypes, self.threads = ll, ctypes, threads
        self.log = ll.llama_log_callback(lambda level, text, _: sys.stderr.write(text.decode(errors="replace")) if level == 4 else None)
        ll.llama_log_set(self.log, None)
        ll.llama_backend_init()
        params = ll.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = ll.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self.vocab = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(self.model))
        self.ctx, self.states = None, {}

    def open(self, fa, positions):
        p = self.ll.llama_context_default_params()
        p.n_ctx, p.n_batch, p.n_ubatch, p.n_seq_max, p.kv_unified = positions, BATCH, BATCH, 2, True
        p.n_threads = p.n_threads_batch = self.threads
        p.flash_attn_type, p.no_perf = fa, True
        self.ctx = self.ll.llama_init_from_model(self.model, p)
        if not self.ctx:
            raise RuntimeError(f"llama.cpp makes no context of {positions} positions")

    def close(self):
        if self.ctx:
            self.ll.llama_free(self.ctx)
        self.ctx = None

    def decode(self, first, n):
        """Evaluates n tokens behind what is there, in one batch; the logits are those of the last one."""
        tokens = (self.ll.llama_token * n)(*((first + i) * 7919 % min(self.vocab, 30000) for i in range(n)))
        if self.ll.llama_decode(self.ctx, self.ll.llama_batch_get_one(tokens, n)) != 0:
            raise RuntimeError(f"llama_decode failed at position {first}")
        self.ll.llama_synchronize(self.ctx)

    def state(self, fa):
        """The serialised KV of a prompt of BASE tokens; evaluated once per variant, which differ in how V lies."""
        if fa not in self.states:
            self.open(fa, BATCH)
            self.decode(0, BASE)
            buf = (self.ctypes.c_uint8 * self.ll.llama_state_seq_get_size(self.ctx, 0))()
            if self.ll.llama_state_seq_get_data(self.ctx, buf, len(buf), 0) != len(buf):
                raise RuntimeError("llama_state_seq_get_data failed")
            self.states[fa] = buf
            self.close()
        return self.states[fa]

    def fill(self, fa, depth):
        """Copies of the prompt's state, each read into sequence 1, moved to its positions and handed to sequence 0, until `depth` positions are there."""
        mem = self.ll.llama_get_memory(self.ctx)
        for at in range(0, depth, BASE):
            if self.ll.llama_state_seq_set_data(self.ctx, self.state_now, len(self.state_now), 1) != len(self.state_now):
                raise RuntimeError(f"llama_state_seq_set_data failed at position {at}")
            self.ll.llama_memory_seq_add(mem, 1, 0, -1, at)
            self.ll.llama_memory_seq_cp(mem, 1, 0, -1, -1)
            self.ll.llama_memory_seq_rm(mem, 1, -1, -1)
        self.back(depth)

    def back(self, depth):
        mem = self.ll.llama_get_memory(self.ctx)
        self.ll.llama_memory_seq_rm(mem, 0, depth, -1)
        if depth and self.ll.llama_memory_seq_pos_max(mem, 0) != depth - 1:
            raise RuntimeError(f"llama.cpp holds {self.ll.llama_memory_seq_pos_max(mem, 0) + 1} positions, expected {depth}")

    def prepare(self, fa, depth, n_prompt, n_gen):
        self.state_now = self.state(fa)
        self.open(fa, depth + n_prompt + n_gen)
        self.fill(fa, depth)
        self.decode(depth, 1)  # applies the moves and warms up
        self.back(depth)

    def measure(self, depth, n_prompt, n_gen, reps, budget):
        """Times of each repetition in ns, and CPU seconds spent; after `budget` seconds no other one begins."""
        samples, begin, cpu = [], time.perf_counter_ns(), time.process_time()
        while len(samples) < reps and (not samples or time.perf_counter_ns() - begin < budget * 1e9):
            start = time.perf_counter_ns()
            for at in range(0, n_prompt, BATCH):
                self.decode(depth + at, min(BATCH, n_prompt - at))
            for i in range(n_gen):
                self.decode(depth + n_prompt + i, 1)
            samples.append(time.perf_counter_ns() - start)
            self.back(depth)
        return {"samples_ns": samples, "cpu_s": time.process_time() - cpu}


def serve(path, threads):
    """Requests and answers are lines of JSON on the standard streams: {"prepare": {...}}, {"measure": {...}}, {"close": {}}."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever llama.cpp prints is no answer
    try:
        peer = Peer(path, threads)
        answers.write("{}\n")
        answers.flush()
        for line in sys.stdin:
            (what, args), = json.loads(line).items()
            answers.write(json.dumps({"result": getattr(peer, what)(**args)}) + "\n")
            answers.flush()
    except RuntimeError as e:
        answers.write(json.dumps({"error": str(e)}) + "\n")
        answers.flush()


class PeerProcess:
    def __init__(self, path, threads):
        command = [sys.executable, os.path.abspath(__file__), "--serve", path, "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": "the llama.cpp process died"}
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer.get("result")

    def ask(self, what, **args):
        self.process.stdin.write(json.dumps({what: args}) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def end(self):
        self.process.stdin.close()
        self.process.wait()


# ---- steps: what is timed ----------------------------------------------------------------------------------------------


def steps_of(tests, knots):
    """The steps that the tests are made of, in order: name -> (depth, tokens read, tokens generated, repetitions)."""
    steps = {}
    for test in tests:
        kind, n = test
        if kind == "tg":
            steps[f"tg@{n}"] = (n, 0, 32 if n < 4096 else 16, 3 if n < 4096 else 2)
        elif kind == "read":
            steps[f"read@{n}"] = (0, n, 0, 1)
        else:
            for d in knots_of(n, knots):
                steps[f"pp@{d}"] = (d, BATCH, 0, 3 if d < 1024 else 1)
    return steps


def knots_of(n, knots):
    """Depths at which batches of a prompt of n tokens are timed: from 0 to that of its last batch."""
    return sorted({0, n - BATCH} | {k for k in knots if k < n - BATCH})


def parse_tests(text):
    tests = []
    for name in text.split(","):
        kind, _, n = name.partition("@")
        if kind not in ("tg", "prefill", "read") or not n.isdigit() or (kind != "tg" and (int(n) < BATCH or int(n) % BATCH)):
            fail(f"test {name}: expected tg@DEPTH, prefill@N or read@N, N a multiple of {BATCH}")
        tests.append((kind, int(n)))
    return tests


def busy_seconds():
    """CPU seconds that all processors together have worked since the system's start, other tenants of the machine included; 0 where Linux' /proc is not there."""
    with contextlib.suppress(OSError), open("/proc/stat", encoding="ascii") as f:
        user, nice, system, _, _, irq, softirq, steal = map(int, f.readline().split()[1:9])
        return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return 0


def run_ours(args, model, step):
    depth, n_prompt, n_gen, reps = step
    command = [args.spillway, "bench", "-m", model, "-p", str(n_prompt), "-n", str(n_gen), "-d", str(depth), "-r", str(reps), "-t", str(args.threads), "-o", "json"]
    command += ["--fill"] * (depth > 0) + ["--no-warmup"] * (depth > 1024 and n_prompt > 0) + args.flags.split()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    result, = json.loads(done.stdout)
    cpu_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return {"samples_ns": result["samples_ns"], "flags": args.flags, "cpu_s": cpu_s, "build": result["build_commit"], "isa": result["isa"], "logits_hash": result["logits_hash"]}


@contextlib.contextmanager
def hold(path, how):
    if not path:
        yield
        return
    with open(path, "a", encoding="ascii") as f:
        fcntl.flock(f, how)
        yield


def is_quiet():
    start, busy = time.perf_counter(), busy_seconds()
    time.sleep(0.25)
    return busy_seconds() - busy < 2 * DISTURBED * (time.perf_counter() - start)


def timed(args, work):
    """What `work` returns and how many cores others kept busy meanwhile.  Begins when others are quiet, or at the end of patience."""
    for left in range(args.patience, -1, -1):
        with hold(args.lock, fcntl.LOCK_EX):
            if not left or is_quiet():
                start, busy = time.perf_counter(), busy_seconds()
                result = work()
                others = max(busy_seconds() - busy - result.pop("cpu_s"), 0) / (time.perf_counter() - start)
                return {**result, "others": round(others, 3)}
        time.sleep(1)


def load_records(path):
    if not path or not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f if line.strip()]


def tokens_per_s(record):
    return statistics.median(record["n_tokens"] / s * 1e9 for s in record["samples_ns"])


def of(records, model, step, fa):
    """The rounds of a step: spillway's (fa None) or those of a variant of llama.cpp."""
    return [r for r in records if r["model"] == model and r["step"] == step and r["fa"] == fa]


def is_behind(records, model, step, fa):
    mine, other = of(records, model, step, fa), of(records, model, step, 1 - fa)
    return bool(mine and other) and statistics.median(map(tokens_per_s, mine)) * 4 / 3 < statistics.median(map(tokens_per_s, other))


def run_step(args, peer, path, step, fa):
    if fa is None:
        return timed(args, lambda: run_ours(args, path, step))
    depth, n_prompt, n_gen, reps = step
    with hold(args.lock, fcntl.LOCK_SH):
        peer.ask("prepare", fa=fa, depth=depth, n_prompt=n_prompt, n_gen=n_gen)
    result = timed(args, lambda: peer.ask("measure", depth=depth, n_prompt=n_prompt, n_gen=n_gen, reps=reps, budget=args.budget))
    peer.ask("close")
    return {**result, "build": args.peer_version}


def run_round(args, records, out):
    for path in args.models:
        model = os.path.basename(path)
        with open(path, "rb") as f:  # both programs map the file; from here on it is in memory
            while f.read(1 << 24):
                pass
        with hold(args.lock, fcntl.LOCK_SH):
            peer = PeerProcess(path, args.threads)
        for name, step in steps_of(args.tests, args.knots).items():
            for fa in (None, 0, 1):
                if fa is not None and is_behind(records, model, name, fa):
                    continue
                start = time.time()
                result = run_step(args, peer, path, step, fa)
                record = {"model": model, "step": name, "fa": fa, "threads": args.threads, "n_tokens": step[1] + step[2], "time": int(start), **result}
                records.append(record)
                if out:
                    out.write(json.dumps(record) + "\n")
                    out.flush()
                program = "spillway" if fa is None else "llama.cpp " + VARIANTS[fa]
                print(f"{model} {name} {program}: {tokens_per_s(record):.2f} tok/s, others {record['others']} cores ({time.time() - start:.1f} s)", file=sys.stderr)
        peer.end()


# ---- the table ---------------------------------------------------------------------------------------------------------


def undisturbed(records):
    """Those during which others left the processors alone, or all where that was never so."""
    return [r for r in records if r["others"] < DISTURBED] or records


def step_seconds(records, model, step, fa):
    """Median seconds of a step, or None if it was not measured."""
    times = [s * 1e-9 for r in undisturbed(of(records, model, step, fa)) for s in r["samples_ns"]]
    return statistics.median(times) if times else None


def prefill_seconds(records, model, n, fa):
    """Time of a prompt of n tokens: its batches, interpolated between the depths at which one was timed."""
    known = {}
    for step in {r["step"] for r in records if r["model"] == model and r["step"].startswith("pp@")}:
        seconds = step_seconds(records, model, step, fa)
        if seconds is not None:
            known[int(step[3:])] = seconds
    depths = sorted(known)
    if 0 not in known or depths[-1] < n - BATCH:
        return None
    total = 0.0
    for d in range(0, n, BATCH):
        low = max(k for k in depths if k <= d)
        high = min(k for k in depths if k >= d)
        total += known[low] + (known[high] - known[low]) * (d - low) / max(high - low, 1)
    return total


def steps_in(test, records, model):
    """The steps that a row of the table is made of."""
    kind, n = test.split("@")
    if kind != "prefill":
        return {test}
    return {r["step"] for r in records if r["model"] == model and r["step"].startswith("pp@") and int(r["step"][3:]) <= int(n) - BATCH}


def row_of(records, model, test):
    kind, n = test.split("@")
    speed = {}
    for fa in (None, 0, 1):
        if kind == "prefill":
            seconds, tokens = prefill_seconds(records, model, int(n), fa), int(n)
        else:
            seconds, tokens = step_seconds(records, model, test, fa), next(r["n_tokens"] for r in records if r["model"] == model and r["step"] == test)
        speed[fa] = tokens / seconds if seconds else None
    best = max((0, 1), key=lambda fa: speed[fa] or 0)
    rounds = zip(of(records, model, test, None), of(records, model, test, best))
    counted = [r for fa in (None, best) for step in steps_in(test, records, model) for r in undisturbed(of(records, model, step, fa))]
    return {
        "model": model,
        "test": test,
        "spillway": speed[None],
        "fa_off": speed[0],
        "fa_on": speed[1],
        "ratio": speed[None] / speed[best] if speed[None] and speed[best] else None,
        "ratios": [tokens_per_s(a) / tokens_per_s(b) for a, b in rounds if max(a["others"], b["others"]) < DISTURBED],
        "disturbed": any(r["others"] >= DISTURBED for r in counted),
    }


def rows_of(records):
    """One row per model and test: tokens/s of ours and of both variants, the ratio to the better one, and that of each round."""
    rows = []
    for model in dict.fromkeys(r["model"] for r in records):
        steps = {r["step"] for r in records if r["model"] == model and not r["step"].startswith("pp@")}
        prompts = sorted({*PROMPTS, *(int(s[5:]) for s in steps if s.startswith("read@"))})
        tests = sorted(steps, key=lambda s: (s[0] != "t", int(s.split("@")[1])))
        tests += [f"prefill@{n}" for n in prompts if prefill_seconds(records, model, n, None)]
        rows += [row_of(records, model, test) for test in tests]
    return rows


def cpu_name():
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as f:
        for line in f:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def report(records, as_json):
    rows = rows_of(records)
    versions = {who: sorted({r["build"] for r in records if (r["fa"] is None) == ours}) for who, ours in (("spillway", True), ("llama-cpp-python", False))}
    if as_json:
        print(json.dumps({"cpu": cpu_name(), "versions": versions, "rows": rows}, indent=1))
        return
    threads = ", ".join(sorted({str(r["threads"]) for r in records}))
    flags = "".join({" " + r["flags"] for r in records if r.get("flags")})
    print(f"""{cpu_name()}, {threads} threads, f16 KV, median tok/s; spillway {", ".join(versions["spillway"])} against llama-cpp-python {", ".join(versions["llama-cpp-python"])}.
Ours: `spillway bench -p P -n N -d DEPTH --fill{flags}`. `prefill@N` is added up, for both, from batches of {BATCH} tokens at a few depths; `read@N` is a prompt really read.
Ratio: to the better of flash attention off and on; in brackets the lowest and highest of single rounds. ~: only measured while others kept more than
{DISTURBED} cores busy.

| model | test | spillway | llama.cpp, fa off | fa on | ratio |
|---|---|---|---|---|---|""")
    for r in rows:
        ratio = f"**{r['ratio']:.2f}**" if r["ratio"] else "-"
        if len(r["ratios"]) > 1:
            ratio += f" ({min(r['ratios']):.2f}-{max(r['ratios']):.2f})"
        cells = [f"{x:.1f}" if x else "-" for x in (r["spillway"], r["fa_off"], r["fa_on"])]
        print("|", " | ".join([r["model"].removesuffix(".gguf"), r["test"], *cells, ratio + (" ~" if r["disturbed"] else "")]), "|")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", nargs="+", default=[], metavar="GGUF")
    p.add_argument("--tests", default=TESTS, help="default: %(default)s")
    p.add_argument("--knots", default=KNOTS, help="depths at which batches are timed for prefill@N, besides 0 and the last one; default: %(default)s")
    p.add_argument("--rounds", type=int, default=1, help="rounds of all the tests; default: 1, but two or more are wanted in the end")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--budget", type=float, default=10, help="seconds after which llama.cpp begins no other repetition; default: 10")
    p.add_argument("--patience", type=int, default=20, help="how often to look, once a second, for a moment without other programs before each timing; default: 20")
    p.add_argument("--spillway", default="build/spillway", metavar="PROGRAM")
    p.add_argument("--flags", default="", help="more flags for `spillway bench`, in one argument; the same for all rounds of a file")
    p.add_argument("--out", metavar="JSONL", help="add the results to this file, and count those that are there as earlier rounds")
    p.add_argument("--report", metavar="JSONL", help="measure nothing: print the table of this file")
    p.add_argument("--json", action="store_true", help="print the table as JSON")
    p.add_argument("--lock", metavar="FILE", help="hold an exclusive flock on this file during each timing, a shared one during other work")
    p.add_argument("--serve", metavar="GGUF", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.report:
        report(load_records(args.report), args.json)
        return
    try:
        import llama_cpp

        args.peer_version = llama_cpp.__version__
    except ImportError:
        fail(f"needs PyPI's llama-cpp-python, which {sys.executable} lacks: pip install llama-cpp-python")
    if args.serve:
        serve(args.serve, args.threads)
        return
    args.tests, args.knots = parse_tests(args.tests), [int(k) for k in args.knots.split(",")]
    if not args.models:
        fail("--models: expected at least one GGUF file")
    records = load_records(args.out)
    if any(r.get("flags", args.flags) != args.flags for r in records if r["fa"] is None):
        fail(f"--out {args.out}: has rounds with other --flags")
    try:
        with open(args.out, "a", encoding="utf-8") if args.out else contextlib.nullcontext() as out:
            for _ in range(args.rounds):
                run_round(args, records, out)
    except (RuntimeError, OSError) as e:
        fail(e)
    report(records, args.json)


if __name__ == "__main__":
    main()
