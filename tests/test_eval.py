#!/usr/bin/env python3
"""spillway eval kld, ruler, kv, passkey, niah and multiturn: what they report, that the same seed gives the same numbers, and that a stopped run goes on.

Environment as for test_cli.py, whose helpers are used.  Prints one line a test and exits non-zero when one fails.
"""
import csv, io, json, os, re, shutil, struct, sys, xml.etree.ElementTree

import test_cli as cli
from test_cli import asset, equal, has, instruct, refused, run_json, spillway, story, temp, tiny

KLD_FIELDS = ("kld_mean", "kld_median", "kld_p99", "kld_p999", "kld_max", "same_top", "ppl", "ppl_full", "share_read", "share_rows", "mass", "output_error")


def needle():
    return asset("models", "needle-d128-Q8_0.gguf")


def kjv():
    return asset("texts", "kjv.txt")


def kld(*flags, model=None):
    return run_json("eval", "kld", "-m", model or tiny(), "-f", kjv(), "-c", 256, "--chunks", 2, "--eval-tokens", 60, "--kv-sink", 4, "--kv-window", 16, "--json", *flags)


def by_policy(report):
    return {p["policy"]: p for p in report["policies"]}


def less(a, b, what):
    if not a < b:
        raise AssertionError(f"{what}: {a} is not below {b}")


def lines_of(path):
    with open(path) as f:
        return f.read().splitlines()


# ---------------------------------------------------------------------------------------------------- kld ----

def test_kld_full_is_zero():
    r = kld("--policies", "full,window")
    p = by_policy(r)
    equal((r["ctx"], r["chunks"], r["eval_tokens"], p["full"]["n_predictions"]), (256, 2, 60, 120))
    for row in p.values():
        has(row, *KLD_FIELDS)
    equal([p["full"][k] for k in ("kld_mean", "kld_max", "same_top", "share_read", "share_rows")], [0, 0, 1, 1, 1])
    equal(p["full"]["ppl"], p["full"]["ppl_full"])
    w = p["window"]
    equal((w["share_read"], w["share_rows"], w["ppl_full"]), (0, 0, p["full"]["ppl_full"]))
    for a, b in ((0, w["kld_median"]), (w["kld_median"], w["kld_mean"] * 3), (w["kld_median"], w["kld_p99"]), (w["kld_p99"], w["kld_p999"]), (w["kld_p999"], w["kld_max"]),
                 (w["same_top"], 1), (w["ppl_full"], w["ppl"])):
        less(a, b, "window")


def test_kld_of_a_window_that_holds_everything():
    r = by_policy(kld("--policies", "window", "--kv-window", 256))["window"]
    equal((r["kld_max"], r["same_top"], r["share_read"]), (0, 1, 1), "there is no middle")


def test_kld_perplexity_is_that_of_ppl():
    flags = ("-m", tiny(), "-f", kjv(), "-c", 256, "--chunks", 3, "--json")
    a, b = run_json("eval", "ppl", *flags)["ppl"], run_json("eval", "kld", *flags, "--eval-tokens", 127, "--policies", "full")["policies"][0]["ppl"]
    less(abs(a / b - 1), 1e-3, f"{a} and {b}: a prompt is not computed by the same kernels as a generated token")


def test_kld_is_repeated_by_any_threads_and_batch():
    a, b = kld("-t", 1, "-b", 7), kld("-t", 2)
    equal(a["policies"], b["policies"])
    equal([p["policy"] for p in a["policies"]][:2], ["full", "window"], "the default policies")
    equal(a["layers"], b["layers"])


def with_norm(value):
    """The tiny model, its last norm filled with a float."""
    data, places = bytearray(open(tiny(), "rb").read()), {}
    for t in run_json("inspect", "-m", tiny(), "--json")["tensors"]:
        name = t["name"].encode()
        at = data.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)
        n_dims = struct.unpack_from("<I", data, at)[0]
        places[t["name"]] = struct.unpack_from("<Q", data, at + 4 + 8 * n_dims + 4)[0], t["bytes"]
    begin = len(data) - max(offset + (n + 31) // 32 * 32 for offset, n in places.values())
    offset, n = places["output_norm.weight"]
    data[begin + offset:begin + offset + n] = struct.pack("<f", value) * (n // 4)
    return temp(f"norm{value}.gguf", bytes(data))


def test_kld_of_no_numbers():
    flags = ("-f", kjv(), "-c", 256, "--chunks", 1, "--eval-tokens", 20, "--policies", "full,window", "--json")
    for row in run_json("eval", "kld", "-m", with_norm(1.0), *flags)["policies"]:
        less(-1e-9, row["kld_mean"], "a number"), less(1, row["ppl"], "a number")
    for row in run_json("eval", "kld", "-m", with_norm(float("nan")), *flags)["policies"]:
        equal([row[k] for k in ("kld_mean", "kld_median", "kld_max", "ppl")], [None] * 4, "logits that are no numbers are not as good as the dense ones")


def mean(matrix):
    cells = [x for row in matrix for x in row]
    return sum(cells) / len(cells)


def test_kld_by_layer_and_head():
    info = run_json("inspect", "-m", tiny(), "--json")
    n_layer, n_head, n_head_kv = (info[k] for k in ("n_layer", "n_head", "n_head_kv"))
    flags = ("--sparse-min-ctx", 0, "--policies", "full,window,oracle:1:.1,oracle:1:1.0")
    r = kld(*flags)
    rows = by_policy(r)
    equal([x["policy"] for x in r["layers"]], list(rows))
    for x in r["layers"]:
        row = rows[x["policy"]]
        for key, n in (("mass", n_head), ("output_error", n_head), ("share_read", n_head_kv)):
            equal([len(v) for v in x[key]], [n] * n_layer, key)
            less(abs(mean(x[key]) - row[key]), 1e-9, f"{x['policy']} {key}: the mean of the map is that of the row, as layers are alike")
    for dense in rows["full"], rows["oracle:1:1.0"]:
        equal((dense["mass"], dense["output_error"]), (1, 0), "nothing is missed")
    w, o = rows["window"], rows["oracle:1:.1"]
    less(w["mass"], o["mass"], "mass"), less(o["mass"], 1, "mass"), less(o["output_error"], w["output_error"], "error"), less(0, o["output_error"], "error")
    bare = kld(*flags, "--no-truth")
    for row, other in zip(r["policies"], bare["policies"]):
        equal((other["mass"], other["output_error"]), (None, None))
        equal({k: v for k, v in row.items() if k not in ("mass", "output_error")}, {k: v for k, v in other.items() if k not in ("mass", "output_error")}, "watching changes nothing")
    equal([(x["mass"], x["share_read"]) for x in bare["layers"]], [(None, x["share_read"]) for x in r["layers"]])


def test_kld_rules_in_policies():
    rows = by_policy(kld("--sparse-min-ctx", 0, "--policies", "oracle:1:.05,oracle:1:.05:threshold=.1,oracle:8"))
    equal({k: v for k, v in rows["oracle:1:.05"].items() if k != "policy"}, {k: v for k, v in rows["oracle:1:.05:threshold=.1"].items() if k != "policy"}, "a rule is adaptive's")
    flags = ("eval", "kld", "-m", tiny(), "-f", kjv(), "-c", 1024, "--chunks", 1, "--eval-tokens", 24, "--sparse-min-ctx", 0, "--kv-window", 16, "--json")
    rows = by_policy(run_json(*flags, "--policies", "adaptive:.3:flat,adaptive:.3:layer,adaptive:16:.3:layer,adaptive:.3,adaptive:.3:model"))
    flat, layer, model = rows["adaptive:.3:flat"], rows["adaptive:.3:layer"], rows["adaptive:.3:model"]
    less(abs(flat["share_rows"] - layer["share_rows"]), 0.01, "a layer's budget is as large")
    less(0, abs(flat["kld_mean"] - layer["kld_mean"]), "and read elsewhere")
    less(abs(flat["share_rows"] - model["share_rows"]), 0.05, "so is the model's, on average")
    less(0, abs(layer["kld_mean"] - model["kld_mean"]), "and read elsewhere again")
    equal(rows["adaptive:.3"]["kld_mean"], model["kld_mean"], "it is the default")
    for rule, row in (("layer", layer), ("flat", flat)):
        equal(by_policy(run_json(*flags, "--policies", "adaptive:.3", "--kv-rule", rule))["adaptive:.3"]["kld_mean"], row["kld_mean"], "the option says the same")
    rows = by_policy(run_json(*flags, "--policies", "adaptive:.3:flat:none,adaptive:.3:flat:mean,adaptive:.3:none"))
    bare, means = rows["adaptive:.3:flat:none"], rows["adaptive:.3:flat:mean"]
    equal(means["kld_mean"], flat["kld_mean"], "means are the default")
    less(0, abs(flat["kld_mean"] - bare["kld_mean"]), "and say something else than nothing")
    equal(bare["share_rows"], means["share_rows"], "of the same positions")
    less(bare["share_read"], means["share_read"], "whose bytes count")
    equal(by_policy(run_json(*flags, "--policies", "adaptive:.3", "--kv-rest", "none"))["adaptive:.3"]["kld_mean"], rows["adaptive:.3:none"]["kld_mean"], "the option says the same")


def test_kld_refusals():
    m, text = tiny(), ("-f", kjv())
    for flags, needles in ((("--policies", "full:1"), ("--policies", "full:1")), (("--policies", "full,full"), ("full", "again")), (("--policies", ","), ("--policies",)),
                           (("--policies", "x:16:2.5"), ("x:16:2.5",)), (("--eval-tokens", "255", "-c", "256"), ("--eval-tokens", "254", "255")), (("-c", "256,512"), ("-c", "one")),
                           (("--chunks", "0"), ("--chunks",)), (("--eval-tokens", "0"), ("--eval-tokens",))):
        refused("eval", "kld", "-m", m, *text, *flags, needles=needles, code=2)
    refused("eval", "kld", "-m", m, *text, "-c", 256, "--eval-tokens", 9, "--policies", "full,magic:.1", needles=("magic", "full", "window"), code=1)
    refused("eval", "kld", "-m", m, "-c", 256, "--eval-tokens", 9, stdin="short", needles=("256", "-c"), code=1)
    refused("eval", "kld", "-m", m, "-f", os.path.join(cli.TMP, "none.txt"), needles=("none.txt",), code=1)


# ---------------------------------------------------------------------------------------------------- output ----

def test_table_and_csv():
    flags = ("eval", "kld", "-m", tiny(), "-f", kjv(), "-c", 256, "--chunks", 1, "--eval-tokens", 20, "--policies", "full,window")
    code, out, err = spillway(*flags)
    equal(code, 0, err)
    lines = out.decode().splitlines()
    has(lines[0], "policy", *KLD_FIELDS)
    equal([l.split()[0] for l in lines[1:3]], ["full", "window"])
    has(lines[3], "20 predictions")
    equal(len(set(map(len, lines[:3]))), 1, "columns")
    rows = list(csv.DictReader(io.StringIO(spillway(*flags, "--csv")[1].decode())))
    equal(len(rows), 2)
    want = run_json(*flags, "--json")["policies"]
    for got, row in zip(rows, want):
        for k in ("policy",) + KLD_FIELDS:
            equal(got[k] if isinstance(row[k], str) or row[k] is None else float(got[k]), "" if row[k] is None else row[k], k)


def test_progress_on_a_terminal_only():
    flags = ("eval", "kv", "-m", tiny(), "--keys", 60, "-n", 3, "--json")
    term = cli.Terminal(*flags, stdout=cli.subprocess.DEVNULL)
    equal(term.finish(), 0, term.text)
    has(term.text, "kv [", "tok/s")
    equal("kv [" in spillway(*flags)[2], False, "progress in a pipe")


def page(path):
    """The page's text, its SVG pictures parsed as XML, and the report that is in it."""
    text = open(path, encoding="utf-8").read()
    pictures = [xml.etree.ElementTree.fromstring(p) for p in re.findall(r"<svg .*?</svg>", text, re.S)]
    report = json.loads(re.search(r'<script type="application/json" id="report">(.*?)</script>', text, re.S).group(1))
    for foreign in ("http:", "https:", " src=", " href=", "url(", "@import"):
        equal(foreign in text, False, foreign)
    return text, pictures, report


def test_page():
    path, model = os.path.join(cli.TMP, "page.html"), os.path.join(cli.TMP, "a<b>&c.gguf")
    shutil.copy(tiny(), model)
    r = kld("--policies", "full,window", "--html", path, model=model)
    text, pictures, report = page(path)
    equal(report, r)
    has(text, "a&lt;b&gt;&amp;c.gguf", f"{by_policy(r)['window']['kld_mean']:.6f}")
    equal(len(pictures), 2 + 3, "divergence; a legend and three maps of the policy that reads less than everything")
    has(text, "layer 0, KV head 0: 0 %", "attention missed")
    circles = pictures[0].findall("circle")
    equal(len(circles), 2, "a dot a policy")
    full, window = ((float(c.get("cx")), float(c.get("cy"))) for c in circles)
    equal(full[0] > window[0] and full[1] > window[1], True, "full reads more and is below")
    for c in full, window:
        equal(0 <= c[0] <= 1040 and 0 <= c[1] <= 560, True, c)
    run_json("eval", "niah", "-m", tiny(), "-c", "512,768", "--depths", 3, "--policies", "full,window", "--json", "--html", path)
    text, pictures, report = page(path)
    equal([len(p.findall("rect")) for p in pictures], [6, 6], "cells")
    run_json("eval", "multiturn", "-m", tiny(), "--keys", 4, "--turns", 2, "-n", 1, "--policies", "full", "--json", "--html", path)
    equal([len(p.findall("rect")) for p in page(path)[1]], [2])
    refused("eval", "kv", "-m", tiny(), "--keys", 3, "-n", 1, "--html", os.path.join(cli.TMP, "no", "page.html"), needles=("--html", "page.html"), code=1)


# ---------------------------------------------------------------------------------------------------- resuming ----

def test_resume_goes_on_where_a_run_stopped():
    path = os.path.join(cli.TMP, "kld.jsonl")
    flags = ("--policies", "full,window")
    whole = kld(*flags, "--chunks", 3)
    want = whole["policies"]
    kld(*flags, "--chunks", 1, "--resume", path)
    equal(len(lines_of(path)), 3, "a header, two policies")
    got = kld(*flags, "--chunks", 3, "--resume", path)
    equal((got["policies"], got["layers"]), (want, whole["layers"]))
    whole = open(path).read()
    for cut in (1, 40, len(whole.splitlines()[-1]) + 20):
        open(path, "w").write(whole[:-cut])
        equal(kld(*flags, "--chunks", 3, "--resume", path)["policies"], want, f"{cut} bytes cut off")
        equal(sorted(lines_of(path)), sorted(whole.splitlines()))


def test_resume_adds_policies_and_samples():
    path = os.path.join(cli.TMP, "kv.jsonl")
    flags = ("eval", "kv", "-m", tiny(), "--keys", 4, "--json")
    want = run_json(*flags, "-n", 4, "--policies", "window,full")
    run_json(*flags, "-n", 2, "--policies", "full", "--resume", path)
    run_json(*flags, "-n", 3, "--policies", "full,window", "--resume", path)
    before = lines_of(path)
    got = run_json(*flags, "-n", 4, "--policies", "window,full", "--resume", path)
    equal((got["policies"], got["rows"]), (want["policies"], want["rows"]))
    equal(lines_of(path)[:len(before)], before, "what was there stays")
    equal((len(before), len(lines_of(path))), (1 + 3 + 3, 1 + 4 + 4))


def test_resume_takes_nothing_that_differs():
    path = os.path.join(cli.TMP, "other.jsonl")
    flags = ("eval", "kv", "-m", tiny(), "--keys", 4, "-n", 1, "--policies", "full,window")
    equal(spillway(*flags, "--resume", path)[0], 0)
    whole = open(path).read()
    for change, needle_ in ((("-s", 43), "seed"), (("--kv-window", 300), "kv_window"), (("--kv-budget", .5), "kv_budget"), (("--kv-threshold", .5), "kv_rule"), (("--kv-rule", "flat"), "kv_rule"), (("--kv-rest", "none"), "kv_rest"), (("-ctk", "q8_0", "-ctv", "q8_0"), "kv_type"), (("--no-repack",), "repacked")):
        if change[0] == "--no-repack" and not json.loads(whole.splitlines()[0])["repacked"]:
            continue
        refused(*flags, "--resume", path, *change, needles=(path, needle_), code=1)
    refused("eval", "kv", "-m", story(), "--keys", 4, "-n", 1, "--resume", path, needles=("model_hash",), code=1)
    refused("eval", "multiturn", "-m", tiny(), "--keys", 4, "-n", 1, "--resume", path, needles=("measure",), code=1)
    equal(open(path).read(), whole, "the file is as it was")
    open(path, "a").write("junk\n")
    refused(*flags, "--resume", path, needles=("line 4",), code=1)
    for text in ("not JSON\n", "[1]\n", "{}\n", "no newline"):
        other = temp("text.jsonl", text)
        refused(*flags, "--resume", other, needles=("text.jsonl",), code=1)
        equal(open(other).read(), text, "a file of somebody else")
    refused(*flags, "--resume", cli.TMP, needles=(cli.TMP,), code=1)


def test_ctrl_c_reports_what_is_done():
    flags = ("eval", "kv", "-m", tiny(), "--keys", 40, "--policies", "full,window", "-s", 5, "--json")
    path = os.path.join(cli.TMP, "cut.jsonl")
    p = cli.subprocess.Popen([cli.PROGRAM, *map(str, flags), "-n", "100000", "--resume", path], stdout=cli.subprocess.PIPE, stderr=cli.subprocess.PIPE)
    while not os.path.exists(path) or len(lines_of(path)) < 6:
        cli.time.sleep(0.02)
        equal(p.poll(), None, "it runs")
    p.send_signal(cli.signal.SIGINT)
    out, err = p.communicate(timeout=60)
    equal(p.returncode, 130, err)
    has(err.decode(), "interrupted", "of 100000 samples")
    got = json.loads(out)
    n = got["policies"][0]["n"]
    equal(got["policies"], run_json(*flags, "-n", n)["policies"], "the same as a run of so many samples")


def test_fidelity_tool_makes_tables():
    out, tool = os.path.join(cli.TMP, "fidelity"), os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tools", "fidelity.py")
    flags = ("-m", tiny(), "-f", kjv(), "-c", 512, "--measures", "kld", "kv", "--eval-tokens", 20, "-n", 1, "--spillway", cli.PROGRAM)
    tables = []
    for policies in "full", "full,window", None:
        p = cli.subprocess.run([sys.executable, tool, out, *map(str, flags if policies else ()), *(("--policies", policies) if policies else ())], capture_output=True, text=True)
        equal(p.returncode, 0, p.stderr)
        tables.append(p.stdout)
    has(tables[1], "### kld: mean KLD at bytes read", "| window | 0.", "### kv: right answers in percent", "spillway eval kld -m", "20 predictions", "--resume")
    equal((tables[0].count("window"), tables[2]), (0, tables[1]), "without a model the tables of what is there")
    stem = os.path.basename(tiny()).rsplit(".", 1)[0]
    equal(sorted(os.listdir(out)), sorted(f"{stem}-512-{m}.{e}" for m in ("kld", "kv") for e in ("html", "json", "jsonl")))


# ---------------------------------------------------------------------------------------------------- retrieval ----

def test_kv_by_a_needle_model():
    cli.not_sanitized()
    r = run_json("eval", "kv", "-m", needle(), "--keys", 24, "-n", 3, "--seed", 1, "--sparse-min-ctx", 0, "--policies", "full,window,adaptive:1.0", "--json")
    p = by_policy(r)
    for policy in "full", "adaptive:1.0":
        equal((p[policy]["same_answer"], p[policy]["kld_mean"]), (1, 0), policy)
    equal(p["window"]["same_answer"], 0)
    less(0.1, p["window"]["kld_mean"], "its first prediction that full makes otherwise")
    equal((p["full"]["accuracy"], p["full"]["share_read"], p["full"]["n"]), (1, 1, 3))
    equal(p["window"]["accuracy"] <= 0.2 and p["window"]["share_read"] == 0, True, p["window"])
    equal([(x["policy"], x["task"], x["keys"]) for x in r["rows"]], [("full", "kv", 24), ("window", "kv", 24), ("adaptive:1.0", "kv", 24)])
    equal(r["prompt"], "plain text")
    alone = run_json("eval", "kv", "-m", needle(), "--keys", 24, "-n", 3, "--seed", 1, "--sparse-min-ctx", 0, "--policies", "window", "--json")
    equal(alone["policies"][0], p["window"], "whatever it is compared beside")


def test_multiturn_by_a_needle_model():
    cli.not_sanitized()
    r = run_json("eval", "multiturn", "-m", needle(), "--keys", 16, "--turns", 3, "-n", 1, "--sparse-min-ctx", 0, "--policies", "full,window,oracle:1:.1", "--json")
    for policy, share in ("full", 1), ("oracle:1:.1", 0.1):
        equal([(x["policy"], x["turn"], x["accuracy"]) for x in r["rows"] if x["policy"] == policy], [(policy, t, 1) for t in (1, 2, 3)])
        less(abs(by_policy(r)[policy]["share_read"] / share - 1), 0.02, f"share read by {policy}")
    less(by_policy(r)["window"]["accuracy"], 0.5, "window")
    equal(by_policy(r)["full"]["n"], 3)


def test_samples_do_not_depend_on_their_number():
    path = [os.path.join(cli.TMP, f"n{i}.jsonl") for i in (1, 2)]
    for p, n in zip(path, (1, 3)):
        run_json("eval", "kv", "-m", story(), "--keys", 3, "-n", n, "--policies", "full,window", "--resume", p, "--json")
    equal(lines_of(path[0]), lines_of(path[1])[:3])


def test_ruler_fits_its_lengths():
    cli.not_sanitized()
    path = os.path.join(cli.TMP, "ruler.jsonl")
    flags = ("eval", "ruler", "-m", tiny(), "-c", 1536, "-n", 1, "--policies", "full")
    code, out, err = spillway(*flags, "--resume", path)
    equal(code, 0, err)
    has(out.decode(), "own word list", "niah_single_1", "plain text", "score")
    new = {"niah_single_1": 128, "niah_multikey_2": 128, "niah_multikey_3": 128, "vt": 30, "cwe": 120, "fwe": 50}
    seen = set()
    for line in lines_of(path)[1:]:
        r = json.loads(line)
        task, length = r["unit"].split("#")[0].split("@")
        seen.add((task, int(length)))
        # cwe has to hold ten common words six times, and grows by ten words.
        equal(0.55 * int(length) < r["result"]["tokens"] + new[task] <= int(length), True, f"{r['unit']}: {r['result']['tokens']} tokens")
    equal(seen, {(t, n) for t in new for n in (1536,)})
    r = run_json(*flags, "--resume", path, "--json")
    equal((r["words"], len(r["rows"])), ("own word list", 6))
    less(abs(sum(x["score"] for x in r["rows"]) / 6 - r["policies"][0]["score"]), 0.02, "the mean of the rows")
    equal([x["task"] for x in run_json(*flags, "--tasks", "vt,cwe", "--resume", path, "--json")["rows"]], ["vt", "cwe"])


def test_grid_and_passkey():
    book = temp("book.txt", "".join(f"Sentence number {i} tells a story. " for i in range(400)))
    r = run_json("eval", "niah", "-m", tiny(), "-c", "512,768", "--depths", 3, "-f", book, "--policies", "full", "--json")
    equal([(x["length"], x["depth"]) for x in r["rows"]], [(n, d) for d in (0, 50, 100) for n in (512, 768)])
    equal((r["haystack"], r["n_samples"]), (book, 1))
    r = run_json("eval", "passkey", "-m", tiny(), "-c", "512", "-n", 2, "--policies", "full", "--json")
    equal([(x["length"], x["n"]) for x in r["rows"]], [(512, 2)])


def test_chat_template_is_used():
    flags = ("eval", "passkey", "-m", instruct(), "-c", 256, "-n", 2, "--policies", "full", "--json")
    r = run_json(*flags)
    equal((r["prompt"], r["policies"][0]["accuracy"]), ("chatml", 1))
    equal(run_json(*flags, "--chat-template", "none")["prompt"], "plain text")


def test_retrieval_refusals():
    m = tiny()
    for flags, needles in ((("ruler", "--tasks", "vt,magic"), ("--tasks", "magic", "niah_single_1")), (("ruler", "--tasks", ""), ("--tasks",)),
                           (("multiturn", "--keys", "3", "--turns", "4"), ("--turns", "3")), (("multiturn", "--turns", "17"), ("--turns",)), (("kv", "-c", "512,1024"), ("-c", "one")),
                           (("kv", "--keys", "0"), ("--keys",)), (("niah", "--depths", "0"), ("--depths",)), (("kv", "-n", "0"), ("-n",)), (("kv", "-s", "-1"), ("-s",))):
        refused("eval", flags[0], "-m", m, *flags[1:], needles=needles, code=2)
    refused("eval", "ruler", "-m", m, "-c", 64, needles=("niah_single_1", "64", "-c"), code=1)
    refused("eval", "kv", "-m", m, "--keys", 9, "-n", 1, "-c", 64, needles=("kv", "64", "-c"), code=1)
    refused("eval", "niah", "-m", m, "-c", 256, "-f", temp("empty.txt", ""), needles=("empty.txt",), code=1)
    refused("eval", "kv", "-m", os.path.join(cli.TMP, "none.gguf"), needles=("none.gguf",), code=1)
    refused("eval", "passkey", "-m", m, "-c", 256, "--policies", "magic", needles=("magic",), code=1)


def main():
    if not os.path.exists(cli.PROGRAM):
        print(f"FAIL  {cli.PROGRAM} is missing: build it first\n0 passed, 1 failed, 0 skipped")
        return 1
    for name, test in [(k, v) for k, v in globals().items() if k.startswith("test_") and callable(v)]:
        if len(sys.argv) > 1 and not any(a in name for a in sys.argv[1:]):
            continue
        what, note = "ok", ""
        try:
            test()
        except cli.Skip as e:
            what, note = "skip", f": {e}"
        except Exception as e:
            what, note = "FAIL", ""
            print(f"{name}: {type(e).__name__}: {str(e)[:1000]}", file=sys.stderr, flush=True)
        cli.counts[what] += 1
        print(f"{what:5s} {name}{note}", flush=True)
    print(f"{cli.counts['ok']} passed, {cli.counts['FAIL']} failed, {cli.counts['skip']} skipped")
    return 1 if cli.counts["FAIL"] else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    finally:
        shutil.rmtree(cli.TMP, ignore_errors=True)
