#!/usr/bin/env python3
"""Makes the tables of docs/FIDELITY.md: runs `spillway eval` over models, lengths and policies, and prints Markdown from what it reports.

usage: fidelity.py OUT [-m MODEL...] [-f TEXT] [-c N...] [--measures kld ruler kv multiturn] [--policies LIST] [options]
       fidelity.py OUT

Every run is one call of the program with --resume OUT/NAME.jsonl, and leaves OUT/NAME.json (all numbers) and OUT/NAME.html (charts); one that was stopped
goes on where it was, and policies that are named later are added.  A prompt is read once for all policies of a run, so name them together.
Without -m nothing is run: the tables of every result in OUT are printed.
"""
import argparse, json, os, shlex, subprocess, sys, time

POLICIES = ("full,window,quest:16:.01,quest:16:.02,quest:16:.05,quest:16:.1,quest:32:.02,quest:32:.05,hgca:4,hgca:2,hgca:1,hgca:.5,"
            "adaptive:.01,adaptive:.02,adaptive:.05,adaptive:.1,oracle:1:.01,oracle:1:.02,oracle:1:.05,oracle:1:.1,oracle:16:.05")
KEY_TOKENS = 78  # of a line of the dictionary, about, with the tokenizers of SmolLM2 and Qwen: sets --keys by length


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", metavar="OUT", help="folder of the results")
    p.add_argument("-m", "--models", nargs="+", default=[], metavar="MODEL", help="GGUF files")
    p.add_argument("-f", "--text", help="text for kld")
    p.add_argument("-c", "--lengths", nargs="+", type=int, default=[8192], metavar="N", help="tokens (default 8192)")
    p.add_argument("--measures", nargs="+", default=["kld"], choices=["kld", "ruler", "kv", "multiturn"], help="what to run (default kld)")
    p.add_argument("--policies", default=POLICIES, help=f"default {POLICIES}")
    p.add_argument("--eval-tokens", type=int, default=512, help="predictions of a chunk (default 512)")
    p.add_argument("--chunks", type=int, default=1, help="chunks of the text (default 1)")
    p.add_argument("-n", "--samples", type=int, default=5, help="samples of a task (default 5)")
    p.add_argument("--turns", type=int, default=8, help="questions about one dictionary (default 8)")
    p.add_argument("--tasks", help="of ruler (default all six)")
    p.add_argument("--tag", default="", help="added to the names of the results, where flags differ")
    p.add_argument("--flags", default="", help="further flags for every run, as one word")
    p.add_argument("--spillway", default=os.environ.get("SPILLWAY", "build/spillway"), help="the program")
    return p.parse_args()


def command(a, model, measure, length, name):
    keys = max(8, length // KEY_TOKENS - 8)
    own = {"kld": ["-f", a.text, "-c", length, "--chunks", a.chunks, "--eval-tokens", a.eval_tokens],
           "ruler": ["-c", length, "-n", a.samples] + (["--tasks", a.tasks] if a.tasks else []),
           "kv": ["--keys", keys, "-n", a.samples],
           "multiturn": ["--keys", keys, "--turns", a.turns, "-n", a.samples]}[measure]
    out = os.path.join(a.out, name)
    return [a.spillway, "eval", measure, "-m", model, *map(str, own), "--policies", a.policies, *shlex.split(a.flags),
            "--resume", out + ".jsonl", "--html", out + ".html", "--json"]


def run(a, model, measure, length):
    name = "-".join([os.path.basename(model).rsplit(".", 1)[0], str(length), measure] + ([a.tag] if a.tag else []))
    argv, began = command(a, model, measure, length, name), time.time()
    print("$", shlex.join(argv), file=sys.stderr, flush=True)
    done = subprocess.run(argv, stdout=subprocess.PIPE)
    if done.returncode != 0:
        sys.exit(f"fidelity.py: {name}: exit {done.returncode}")
    report = json.loads(done.stdout)
    report["command"] = shlex.join(argv)
    path = os.path.join(a.out, name + ".json")
    with open(path + ".part", "w") as f:
        json.dump(report, f)
    os.replace(path + ".part", path)
    print(f"{name}: {time.time() - began:.0f} s", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------------- tables ----

def percent(v):
    return "-" if v is None else f"{100 * v:.3g} %" if v < 0.1 else f"{100 * v:.1f} %"


def number(v, digits=4):
    return "-" if v is None else f"{v:.{digits}f}"


def table(head, rows):
    return "\n".join(["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)] + ["| " + " | ".join(r) + " |" for r in rows])


def kld_table(r):
    rows = [[p["policy"], percent(p["share_read"]), percent(p["share_rows"]), number(p["kld_mean"]), number(p["kld_median"]), number(p["kld_p99"], 3), number(p["kld_max"], 2),
             percent(p["same_top"]), number(p["ppl"], 3), percent(p["mass"]), percent(p["output_error"])] for p in r["policies"]]
    return table(["policy", "bytes read", "rows read", "mean KLD", "median", "99 %", "max", "same top", "perplexity", "attention captured", "output error"], rows)


def score(p):
    return p["score"] if "score" in p else 100 * p["accuracy"]


def task_table(r):
    """A row for each policy, a column for each task, length or turn."""
    key = "turn" if "turn" in r["rows"][0] else "task"
    columns = list(dict.fromkeys(str(x[key]) for x in r["rows"]))
    cells = {(x["policy"], str(x[key])): score(x) for x in r["rows"]}
    rows = [[p["policy"], percent(p["share_read"]), percent(p["share_rows"]), f"{score(p):.1f}"] +
            ([f"{cells[p['policy'], c]:.0f}" for c in columns] if len(columns) > 1 else []) for p in r["policies"]]
    return table(["policy", "bytes read", "rows read", "right, %"] + ([f"{key} {c}" if key == "turn" else c for c in columns] if len(columns) > 1 else []), rows)


def what(r):
    if r["measure"] == "kld":
        return f"{r['eval_tokens']} predictions in each of {r['chunks']} chunks of {r['ctx']} tokens"
    return f"{r['policies'][0]['n']} answers, {r['prompt']}, context {r['ctx']}"


def detail(name, r):
    body = kld_table(r) if r["measure"] == "kld" else task_table(r)
    return f"#### {name}\n\n{what(r)}; kernels {r['isa']}.\n\n```\n{r['command']}\n```\n\n{body}\n"


def short(r):
    """What a policy's cell says in an overview."""
    if r["measure"] == "kld":
        return {p["policy"]: f"{number(p['kld_mean'])} at {percent(p['share_read'])}" for p in r["policies"]}
    return {p["policy"]: f"{score(p):.1f} at {percent(p['share_read'])}" for p in r["policies"]}


def overview(measure, results):
    """Policies down, models and lengths across."""
    cells = {name: short(r) for name, r in results.items()}
    policies = list(dict.fromkeys(p for c in cells.values() for p in c))
    title = {"kld": "mean KLD at bytes read", "ruler": "RULER score at bytes read"}.get(measure, "right answers in percent at bytes read")
    return f"### {measure}: {title}\n\n" + table(["policy"] + [name.replace("-" + measure, "") for name in cells], [[p] + [c.get(p, "-") for c in cells.values()] for p in policies]) + "\n"


def print_tables(folder):
    found, results = [], {}
    for file in os.listdir(folder):
        if file.endswith(".json"):
            with open(os.path.join(folder, file)) as f:
                found.append((file[:-5], json.load(f)))
    for name, r in sorted(found, key=lambda x: (x[1]["measure"], os.path.basename(x[1]["model"]), x[1]["ctx"], x[0])):
        results.setdefault(r["measure"], {})[name] = r
    for measure, of in results.items():
        print(overview(measure, of))
    for of in results.values():
        for name, r in of.items():
            print(detail(name, r))


def main():
    a = arguments()
    if "kld" in a.measures and a.models and not a.text:
        sys.exit("fidelity.py: kld needs a text: -f FILE")
    os.makedirs(a.out, exist_ok=True)
    for model in a.models:
        for length in a.lengths:
            for measure in a.measures:
                run(a, model, measure, length)
    print_tables(a.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
