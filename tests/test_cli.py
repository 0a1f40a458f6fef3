#!/usr/bin/env python3
"""The program as a user meets it: flags, help pages, refusals, JSON, pipes, signals and a terminal.

Environment: SPILLWAY          the program (default build/spillway)
             SPILLWAY_ASSETS   test models and vectors (default ../shared/assets)
             MODELS            real models (default build/models)
Prints one line a test, like the C tests, and exits non-zero when one fails.
"""
import json, os, pty, re, select, shutil, signal, struct, subprocess, sys, tempfile, time, fcntl, termios

PROGRAM = os.path.abspath(os.environ.get("SPILLWAY", "build/spillway"))
ASSETS = os.path.abspath(os.environ.get("SPILLWAY_ASSETS", "../shared/assets"))
MODELS = os.path.abspath(os.environ.get("MODELS", "build/models"))
HERE = os.path.dirname(os.path.abspath(__file__))
COMMANDS = ("run", "chat", "tokenize", "eval", "inspect", "bench")
TMP = tempfile.mkdtemp(prefix="spillway-cli-")
counts = {"ok": 0, "FAIL": 0, "skip": 0}


def not_sanitized():
    """For tests whose time is arithmetic: minutes under a sanitizer, on code that other tests walk."""
    if os.environ.get("TEST_SANITIZED"):
        raise Skip("mostly arithmetic, which is many times slower under a sanitizer")


class Skip(Exception):
    pass


def asset(*parts):
    path = os.path.join(ASSETS, *parts)
    if not os.path.exists(path):
        raise Skip(f"{path} is missing")
    return path


def tiny():
    return asset("models", "stories260K-f32.gguf")


def story():
    return asset("models", "stories15M-Q8_0.gguf")


def instruct():
    path = os.path.join(MODELS, "SmolLM2-135M-Instruct-Q4_1.gguf")
    if not os.path.exists(path):
        raise Skip(f"{path} is missing")
    return path


def temp(name, data):
    path = os.path.join(TMP, name)
    with open(path, "wb") as f:
        f.write(data if isinstance(data, bytes) else data.encode())
    return path


def spillway(*args, stdin=b"", env=None, timeout=300, stdout=subprocess.PIPE):
    data = stdin.encode() if isinstance(stdin, str) else stdin
    p = subprocess.run([PROGRAM, *map(str, args)], input=data, stdout=stdout, stderr=subprocess.PIPE, timeout=timeout, env=dict(os.environ, **(env or {})))
    return p.returncode, p.stdout, p.stderr.decode("utf-8", "replace")


def equal(got, want, what=""):
    if got != want:
        raise AssertionError(f"{what}: got {got!r}, expected {want!r}")


def has(text, *parts):
    for part in parts:
        if str(part) not in text:
            raise AssertionError(f"{part!r} is not in {text[:600]!r}")


def refused(*args, needles=(), code=None, **kw):
    """Non-zero exit, no signal, one line on standard error that holds every needle, nothing on standard output."""
    rc, out, err = spillway(*args, **kw)
    if rc <= 0 or (code is not None and rc != code):
        raise AssertionError(f"{args}: exit {rc}, expected {code or 'a failure'}; {err[:200]!r}")
    if out or len(err.splitlines()) != 1 or not err.endswith("\n"):
        raise AssertionError(f"{args}: standard output {out[:80]!r}, standard error {err[:300]!r}")
    has(err, "spillway", *needles)


def run_json(*args, **kw):
    code, out, err = spillway(*args, **kw)
    equal(code, 0, err)
    return json.loads(out)


def plain(prompt, *flags, model=None, n=16):
    return run_json("run", "-m", model or story(), "--chat-template", "none", "--temp", 0, "-n", n, "--json", *flags, stdin=prompt)


class Terminal:
    """The program on a pseudo-terminal; what it writes there is collected in .text."""

    def __init__(self, *args, env=None, stdin=None, stdout=None):
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))

        def own_terminal():
            os.setsid()
            fcntl.ioctl(2, termios.TIOCSCTTY, 0)

        self.p = subprocess.Popen([PROGRAM, *map(str, args)], stdin=slave if stdin is None else stdin, stdout=slave if stdout is None else stdout, stderr=slave,
                                  env=dict(os.environ, TERM="xterm", **(env or {})), preexec_fn=own_terminal)
        os.close(slave)
        self.fd, self.text = master, ""

    def read(self, seconds):
        ready, _, _ = select.select([self.fd], [], [], seconds)
        if not ready:
            return True
        try:
            data = os.read(self.fd, 65536)
        except OSError:
            return False
        self.text += data.decode("utf-8", "replace")
        return bool(data)

    def expect(self, pattern, seconds=60, start=0):
        """Waits until pattern occurs behind offset start; returns the offset behind it."""
        end = time.time() + seconds
        while True:
            m = re.compile(pattern).search(self.text, start)
            if m:
                return m.end()
            if time.time() > end or not self.read(0.2):
                raise AssertionError(f"{pattern!r} did not come; the terminal shows {self.text[-600:]!r}")

    def type(self, text):
        os.write(self.fd, text.encode())

    def finish(self, seconds=60):
        end = time.time() + seconds
        while self.p.poll() is None and time.time() < end:
            self.read(0.1)
        while self.read(0) and select.select([self.fd], [], [], 0)[0]:
            pass
        if self.p.poll() is None:
            self.p.kill()
            raise AssertionError(f"the program did not end; the terminal shows {self.text[-600:]!r}")
        os.close(self.fd)
        return self.p.returncode


# ------------------------------------------------------------------------------------------- command line ----

def test_help_pages():
    code, out, err = spillway("--help")
    equal((code, err), (0, ""))
    has(out.decode(), *COMMANDS, "Usage", "Exit codes")
    for c in COMMANDS:
        code, out, err = spillway(c, "--help")
        equal((code, err), (0, ""), c)
        has(out.decode(), "spillway " + c, "Usage", "--model", "Examples", "Exit codes", "--help")
        longest = max(out.decode().splitlines(), key=len)
        if len(longest) > 100:
            raise AssertionError(f"{c}: a line of {len(longest)} columns: {longest!r}")
    has(spillway("run", "--help")[1].decode(), "[default: 0.8]", "[default: 40]", "[default: 0.95]", "[default: 0.05]", "Choices: full, window")


def test_help_wins_over_errors():
    equal(spillway("run", "--no-such-flag", "--help")[0], 0)


def test_man_page_names_every_flag():
    page = os.path.join(HERE, "..", "docs", "spillway.1")
    text = open(page).read().replace("\\-", "-")
    for c in COMMANDS:
        for flag in set(re.findall(r"--[a-z][a-z-]+", spillway(c, "--help")[1].decode())):
            has(text, flag)


def test_version():
    code, out, err = spillway("--version")
    header = open(os.path.join(HERE, "..", "include", "spillway.h")).read()
    want = re.search(r'define SPW_VERSION "(.*)"', header).group(1)
    equal((code, out, err), (0, f"spillway {want}\n".encode(), ""))


def test_usage_errors():
    refused(needles=("--help",), code=2)
    refused("rnu", needles=("rnu", "run"), code=2)
    refused("--verison", needles=("--verison",), code=2)
    for c in COMMANDS:
        refused(c, "--no-such-flag", needles=("--no-such-flag", c), code=2)
        refused(c, "-Z", needles=("-Z",), code=2)
    refused("run", "--tempp", "1", needles=("--tempp", "did you mean --temp?"), code=2)
    refused("run", "--prediction=3", needles=("--prediction",), code=2)
    refused("run", "-m", "x", "text", needles=("text", "-p"), code=2)
    refused("run", "-m", "x", "--temp", needles=("--temp", "0 to 100", "nothing"), code=2)
    refused("run", "-m", "x", "--json=1", needles=("--json", "no value"), code=2)
    for c in ("run", "chat", "tokenize"):
        refused(c, needles=("-m",), code=2)
    refused("inspect", needles=("FILE",), code=2)
    refused("eval", "-m", "x", needles=("ppl",), code=2)
    refused("eval", "pppl", "-m", "x", needles=("pppl", "ppl"), code=2)
    refused("eval", "ppl", "-m", "x", "--chunks", "0", needles=("--chunks",), code=2)
    refused("chat", "-m", "x", "--chat-template", "none", needles=("--chat-template",), code=2)
    refused("tokenize", "-m", "x", "-p", "a", "-f", "b", needles=("-p", "-f"), code=2)


def test_value_errors():
    for flag, value, needles in (
            ("--temp", "hot", ("a number from 0 to 100", "'hot'")), ("--temp", "-1", ("0 to 100",)), ("--temp", "nan", ("nan",)), ("--temp", "", ("''",)),
            ("-t", "0", ("-t", "1 to 256")), ("-t", "257", ("257",)), ("--threads", "1x", ("--threads", "1x")), ("-c", "0", ("-c",)),
            ("-c", "99999999999999999999", ("-c",)), ("-n", "-2", ("-n",)), ("-n", "1.5", ("1.5",)), ("-b", "8193", ("1 to 8192",)), ("--top-p", "1.1", ("0 to 1",)),
            ("--kv-policy", "magic", ("magic", "full", "window")), ("--kv-window", "0", ("--kv-window",)), ("--rope-scaling", "x", ("none, linear, yarn",)),
            ("--chat-template", "foo", ("chatml", "llama3", "none")), ("--seed", "4294967296", ("4294967295",))):
        refused("run", "-m", "x", "-p", "a", flag, value, needles=needles, code=2)
    refused("run", "-m", "x", "-p", "a", "--rope-scale", "2", needles=("--rope-scaling",), code=2)
    refused("run", "-m", "x", "-p", "a", "--system", "s", "--chat-template", "none", needles=("--system",), code=2)


def test_equals_sign_and_aliases():
    a = plain("Once", "--n-predict=3", "--seed=7", n=9)
    b = plain("Once", "--predict", 3, "-s", 7, n=9)
    equal((a["n_generated"], a["seed"]), (3, 7))
    equal(a["tokens"], b["tokens"])


# ------------------------------------------------------------------------------------------------ refusals ----

def test_model_refusals():
    for c in ("run", "chat", "tokenize"):
        refused(c, "-m", os.path.join(TMP, "none.gguf"), needles=("none.gguf", "No such file"), code=1)
        refused(c, "-m", temp("text.gguf", "this is no model at all, only text"), needles=("text.gguf",), code=1)
        refused(c, "-m", temp("empty.gguf", ""), needles=("empty.gguf",), code=1)
        refused(c, "-m", TMP, needles=(TMP,), code=1)
    refused("inspect", os.path.join(TMP, "none.gguf"), needles=("none.gguf",), code=1)
    refused("eval", "ppl", "-m", os.path.join(TMP, "none.gguf"), needles=("none.gguf",), code=1)
    refused("run", "-m", os.path.join(TMP, "two\nlines.gguf"), "-p", "a")


def test_truncated_model():
    whole = open(tiny(), "rb").read()
    for cut in (1, 4, 23, 24, 1000, 20000, len(whole) // 2, len(whole) - 1):
        for c in (("run", "-p", "a", "-n", "1", "-m"), ("inspect",)):
            refused(*c, temp("cut.gguf", whole[:cut]), needles=("cut.gguf",), code=1)


def patched(old, new):
    whole = open(tiny(), "rb").read()
    if old not in whole or len(old) != len(new):
        raise AssertionError(f"the test model holds no {old!r}")
    return temp("patched.gguf", whole.replace(old, new, 1))


def string(s):
    return struct.pack("<Q", len(s)) + s


def test_unknown_architecture_tokenizer_and_type():
    key = string(b"general.architecture") + struct.pack("<I", 8)
    path = patched(key + string(b"llama"), key + string(b"llamX"))
    refused("run", "-m", path, "-p", "a", needles=("llamX",), code=1)
    has(spillway("inspect", path)[1].decode(), "llamX", "note")
    key = string(b"tokenizer.ggml.model") + struct.pack("<I", 8)
    refused("run", "-m", patched(key + string(b"llama"), key + string(b"llamY")), "-p", "a", needles=("llamY",), code=1)
    whole = open(tiny(), "rb").read()
    at = whole.index(string(b"blk.0.attn_q.weight")) + 8 + 19
    dims = struct.unpack_from("<I", whole, at)[0]
    type_at = at + 4 + 8 * dims
    path = temp("type.gguf", whole[:type_at] + struct.pack("<I", 99) + whole[type_at + 4:])
    refused("run", "-m", path, "-p", "a", needles=("blk.0.attn_q.weight", "99"), code=1)
    path = temp("shape.gguf", whole[:at + 4] + struct.pack("<Q", 32) + whole[at + 12:])
    refused("run", "-m", path, "-p", "a", needles=("blk.0.attn_q.weight", "32", "64"), code=1)


def test_vocabulary_only():
    vocab = asset("vocab", "ggml-vocab-gpt-2.gguf")
    refused("run", "-m", vocab, "-p", "a", needles=("vocab",), code=1)
    refused("eval", "ppl", "-m", vocab, needles=("vocab",), code=1)
    equal(spillway("tokenize", "-m", vocab, "-p", "hello")[0], 0)
    equal(spillway("inspect", vocab)[0], 0)
    refused("tokenize", "-m", asset("vocab", "smollm.inp"), "-p", "a", code=1)


def test_input_refusals():
    refused("run", "-m", tiny(), "-f", os.path.join(TMP, "none.txt"), needles=("none.txt", "No such file"), code=1)
    refused("run", "-m", tiny(), "-f", TMP, needles=(TMP, "directory"), code=1)
    refused("tokenize", "-m", tiny(), "-f", os.path.join(TMP, "none.txt"), needles=("none.txt",), code=1)
    refused("run", "-m", tiny(), "-p", "word " * 2000, "-c", 64, needles=("64", "-c"), code=1)
    n = int(re.search(r"takes (\d+) tokens", spillway("run", "-m", tiny(), "-p", "word " * 2000, "-c", 64)[2]).group(1))
    count = spillway("tokenize", "-m", tiny(), "--bos", "--ids", "-p", "word " * 2000)[1].split()
    equal(n, len(count), "the length that the message names")
    refused("run", "-m", tiny(), "-p", "word " * 2000, needles=("512",), code=1)
    refused("eval", "ppl", "-m", tiny(), "-c", 512, stdin="too short", needles=("512", "-c"), code=1)


def test_template_refusals():
    refused("run", "-m", tiny(), "-p", "a", "--system", "s", needles=("--chat-template",), code=1)
    refused("chat", "-m", tiny(), needles=("--chat-template",), code=1)
    refused("run", "-m", tiny(), "--chat-template", "chatml", needles=("empty",), code=1)
    refused("run", "-m", tiny(), "--chat-template", "chatml", stdin=b"a\0b", needles=("NUL", "offset 1"), code=1)


def test_not_enough_memory():
    refused("run", "-m", tiny(), "-p", "a", "-c", 1 << 30, needles=("memory", "needed", "available"), code=1)
    refused("run", "-m", tiny(), "-p", "a", "-n", 1, "-c", 1 << 30, "--json", needles=("memory",), code=1)


def test_context_beyond_trained():
    code, out, err = spillway("run", "-m", tiny(), "-p", "Once", "-n", 2, "-c", 1000)
    equal(code, 0, err)
    has(err, "warning", "1000", "512", "--rope-scaling yarn", "--rope-scale 2")
    code, out, err = spillway("run", "-m", tiny(), "-p", "Once", "-n", 2, "-c", 1000, "--rope-scaling", "yarn", "--rope-scale", 2)
    equal((code, "warning" in err), (0, False), err)


# ---------------------------------------------------------------------------------------------- input, text ----

def test_prompt_sources():
    f, g, h = temp("a.txt", "Once upon a time"), temp("b.txt", "Once upon\n"), temp("c.txt", "Once upon\n\n")
    want = plain("Once upon a time")["tokens"]
    equal(plain("", "-p", "Once upon a time")["tokens"], want, "-p")
    equal(plain("", "-f", f)["tokens"], want, "-f")
    both = plain("Once upon\n\nthere")
    for path in (temp("d.txt", "Once upon"), g, h):
        r = plain("", "-f", path, "-p", "there")
        equal((r["n_prompt"], r["logits_hash"]), (both["n_prompt"], both["logits_hash"]), path)


def test_empty_prompt_starts_with_bos():
    equal(plain("", n=4)["n_prompt"], 1)


def test_text_stream_and_statistics():
    r = plain("Once upon a time")
    code, out, err = spillway("run", "-m", story(), "--temp", 0, "-n", 16, "-p", "Once upon a time", "--chat-template", "none")
    equal((code, out.decode()), (0, r["text"]))
    equal(len(err.splitlines()), 1, "lines on standard error")
    has(err, f"prompt {r['n_prompt']} tokens in", "generated 16 in", "tok/s", "kv ", "policy adaptive")


def test_json_object():
    r = plain("Once upon a time", "-t", 1)
    for k, kind in (("text", str), ("tokens", list), ("n_prompt", int), ("n_generated", int), ("stop", str), ("timings", dict), ("kv", dict), ("logits_hash", str),
                    ("model", str), ("isa", str), ("threads", int), ("seed", int)):
        equal(isinstance(r[k], kind), True, k)
    equal((r["n_generated"], len(r["tokens"]), r["stop"], r["threads"], r["model"]), (16, 16, "length", 1, story()))
    equal(bool(re.fullmatch("[0-9a-f]{16}", r["logits_hash"])), True, r["logits_hash"])
    equal(r["kv"]["policy"], "adaptive")
    equal(r["kv"]["share_read"], 1)
    equal(r["kv"]["positions"], r["n_prompt"] + 15, "the last token is not evaluated in vain")
    for k in ("prompt_ms", "prompt_per_second", "predicted_ms", "predicted_per_second"):
        equal(r["timings"][k] > 0, True, k)
    n = plain("Once upon a time", n=0)
    equal((n["n_generated"], n["text"], n["stop"]), (0, "", "length"))
    equal(plain("Once upon a time", "-b", 1)["logits_hash"], r["logits_hash"], "any batch size")


def test_cache_types():
    text = "Once upon a time there was a little bird. " * 18
    f16, q8 = (plain(text, "-ctk", t, "-ctv", t) for t in ("f16", "q8_0"))
    equal((f16["kv"]["type"], q8["kv"]["type"]), ("f16", "q8_0"))
    equal(f16["kv"]["positions"] > 128 and f16["n_prompt"] == q8["n_prompt"], True)
    equal(f16["logits_hash"] == q8["logits_hash"], False, "bytes are not halves")
    equal(q8["logits_hash"], plain(text, "--cache-type-k", "q8_0", "--cache-type-v=q8_0", "-b", 100, "-t", 1)["logits_hash"], "any batch size, any number of threads")
    a, b = (plain("Once upon a time", "-ctk", t, "-ctv", t)["logits_hash"] for t in ("f16", "q8_0"))
    equal(a, b, "a page that is not full holds halves")
    f32 = plain(text, "-ctk", "f32", "-ctv", "f32")
    equal(q8["kv"]["bytes"] < 0.6 * f32["kv"]["bytes"], True, (q8["kv"]["bytes"], f32["kv"]["bytes"]))
    for c, flags in (("run", ("-p", "a")), ("chat", ()), ("inspect", ()), ("eval", ())):
        first = (c, "ppl") if c == "eval" else (c,)
        refused(*first, "-m", tiny(), *flags, "-ctk", "q8_0", needles=("-ctk", "-ctv", "q8_0", "f16"), code=2)
        refused(*first, "-m", tiny(), *flags, "-ctk", "f32", "-ctv", "q8_0", needles=("same", "f32", "q8_0"), code=2)
        refused(*first, "-m", tiny(), *flags, "-ctk", "q4_0", needles=("f16, f32, q8_0", "q4_0"), code=2)
        has(" ".join(spillway(c, "--help")[1].decode().split()), "-ctk", "not in blocks of 32", "a scale for each channel of a page of 128 positions", "Choices: f16, f32, q8_0")
    ppl = [run_json("eval", "ppl", "-m", story(), "-f", asset("texts", "kjv.txt"), "-c", 256, "--chunks", 4, "-ctk", t, "-ctv", t, "--json") for t in ("f16", "q8_0")]
    equal([r["kv_type"] for r in ppl], ["f16", "q8_0"])
    equal(0 < abs(ppl[1]["ppl"] / ppl[0]["ppl"] - 1) < 0.01, True, [r["ppl"] for r in ppl])


def test_seed():
    a, b, c = (run_json("run", "-m", story(), "-p", "Once", "-n", 12, "--temp", 1.5, "--json", "-s", s)["tokens"] for s in (1, 1, 2))
    equal(a, b, "same seed")
    equal(a != c, True, "another seed")


def test_window_policy_reads_less():
    r = plain("a " * 150, "--kv-policy", "window", "--kv-sink", 4, "--kv-window", 16)
    equal((r["kv"]["policy"], r["kv"]["share_read"]), ("window", 0))


def test_context_full_ends_generation():
    r = plain("Once upon a time", "-c", 20, "--ignore-eos", n=-1)
    equal((r["stop"], r["kv"]["positions"]), ("length", 20))
    equal(r["n_prompt"] + r["n_generated"], 21, "a token that needs no position of its own is the last")


# ------------------------------------------------------------------------------------------ output, signals ----

def test_closed_pipe():
    p = subprocess.Popen([PROGRAM, "run", "-m", story(), "-p", "Once", "-n", "200", "--ignore-eos", "--temp", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    p.stdout.read(3)
    p.stdout.close()
    err = p.stderr.read().decode()
    equal((p.wait(60), err), (1, ""))


def test_unwritable_output():
    for args in (("run", "-m", tiny(), "-p", "Once", "-n", 4), ("run", "-m", tiny(), "-p", "Once", "-n", 4, "--json"), ("tokenize", "-m", tiny(), "-p", "a"),
                 ("inspect", tiny()), ("run", "--help"), ("--version",)):
        with open("/dev/full", "wb") as full:
            code, _, err = spillway(*args, stdout=full)
        equal((code, len(err.splitlines())), (1, 1), f"{args} {err!r}")
        has(err, "standard output", "No space")


def test_standard_streams_closed():
    before = open(tiny(), "rb").read()
    code = subprocess.run(f"'{PROGRAM}' tokenize -m '{tiny()}' -p a >&- 2>/dev/null", shell=True).returncode
    equal((code, open(tiny(), "rb").read() == before), (1, True))
    equal(subprocess.run(f"'{PROGRAM}' tokenize -m '{tiny()}' <&- 2>/dev/null", shell=True).returncode, 1)


def long_answer(*flags):
    """A run that generates for minutes."""
    return subprocess.Popen([PROGRAM, "run", "-m", asset("models", "needle-d64-l8.gguf"), "-p", "abcabcabc", "--ignore-eos", "--temp", "0", "-c", "100000",
                             "--chat-template", "none", *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_interrupt_streaming():
    p = long_answer()
    first = p.stdout.read(1)
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=60)
    err = err.decode()
    equal((p.returncode, len(first), len(err.splitlines())), (130, 1, 1), err)
    has(err, "generated", "interrupted")


def test_interrupt_json():
    p = long_answer("--json")
    time.sleep(3)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=60)
    equal((p.returncode, err), (130, b""))
    r = json.loads(out)
    equal((r["stop"], r["n_generated"] > 0, len(r["tokens"])), ("interrupt", True, r["n_generated"]))


def test_interrupt_reading():
    prompt = temp("long.txt", "abcdefgh" * 12000)
    p = subprocess.Popen([PROGRAM, "run", "-m", asset("models", "needle-d64-l8.gguf"), "-f", prompt, "-n", "1", "--json", "--chat-template", "none", "-c", "100000"],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(2)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=60)
    r = json.loads(out)
    equal((p.returncode, r["stop"], r["n_generated"], 0 < r["n_prompt"] < 96000), (130, "interrupt", 0, True), err.decode())


def test_progress_bar_on_a_terminal_only():
    t = Terminal("run", "-m", story(), "-p", "word " * 200, "-n", 3, "--temp", 0)
    equal(t.finish(), 0)
    has(t.text, "reading [", "#", "tok/s", "left", "\r\x1b[K", "generated 3")
    err = spillway("run", "-m", story(), "-p", "word " * 200, "-n", 3)[2]
    equal("reading" in err or "\r" in err, False, err)
    out = open(os.path.join(TMP, "out"), "wb")
    t = Terminal("run", "-m", story(), "-p", "word " * 200, "-n", 3, "--temp", 0, stdout=out)
    equal(t.finish(), 0)
    has(t.text, "reading [")


# ----------------------------------------------------------------------------------------------------- chat ----

def test_chat_json():
    args = ("chat", "-m", instruct(), "--json", "-n", 24, "--temp", 0, "-c", 2048)
    code, out, err = spillway(*args, stdin="What is the capital of France?\nAnd of Italy?\n")
    equal((code, err), (0, ""))
    turns = [json.loads(line) for line in out.splitlines()]
    equal([t["turn"] for t in turns], [1, 2])
    equal(turns[1]["n_prompt"] < turns[0]["n_prompt"], True, "the second turn reads only what is new")
    has(turns[0]["text"], "Paris")
    # A conversation is the same as its turns run apart: the positions add up, whether or not an answer was cut.
    code, out, err = spillway(*args, "-n", 3, stdin="Tell me a story.\nGo on.\n/quit\n")
    turns = [json.loads(line) for line in out.splitlines()]
    equal((code, [t["stop"] for t in turns], [t["n_generated"] for t in turns]), (0, ["length"] * 3, [3] * 3))
    equal(turns[2]["kv"]["positions"], sum(t["n_prompt"] + 3 for t in turns) - 1)


def test_chat_plain_pipe():
    code, out, err = spillway("chat", "-m", instruct(), "-n", 8, "--temp", 0, "-c", 512, stdin="What is the capital of France?\n\n/stats\n/quit\nnever\n")
    equal((code, len(out.decode().splitlines())), (0, 1), err)
    has(err, "generated", "context")


def test_chat_context_full():
    code, out, err = spillway("chat", "-m", instruct(), "--json", "-n", 60, "--temp", 0, "-c", 96, "--ignore-eos", stdin="Tell me a story.\n" * 4)
    equal((code, len(err.splitlines())), (1, 1), err)
    has(err, "96", "-c")


def test_chat_on_a_terminal():
    state = os.path.join(TMP, "state")
    t = Terminal("chat", "-m", instruct(), "-n", 24, "--temp", 0, "-c", 2048, env={"XDG_STATE_HOME": state})
    at = t.expect(r"> ")
    # Line editing: the wrong letter is taken back, and Ctrl-A goes to the front.
    t.type("is the capital of Francx\x7fe?\x01What \r")
    at = t.expect("Paris", start=at)
    at = t.expect("> ", start=at)
    t.type("/nonsense\r")
    at = t.expect("/reset", start=at)
    at = t.expect("> ", start=at)
    t.type("/stats\r")
    at = t.expect("generated", start=at)
    at = t.expect("> ", start=at)
    t.type("/n\u00fc\u00e9\x7f\r")
    at = t.expect("/reset", start=at)
    at = t.expect("> ", start=at)
    t.type("/quit\r")
    equal(t.finish(), 0)
    path = os.path.join(state, "spillway", "history")
    if os.path.exists(path):
        text = open(path, "rb").read().decode("unicode_escape").encode("latin-1").decode()
        has(text, "What is the capital of France?", "/n\u00fc\n")
        equal(os.stat(path).st_mode & 0o077, 0, "others' access to the history")


def test_chat_interrupts_on_a_terminal():
    t = Terminal("chat", "-m", instruct(), "--ignore-eos", "--temp", 0, "-c", 8192, env={"XDG_STATE_HOME": os.path.join(TMP, "state")})
    at = t.expect("> ")
    t.type("Count to one thousand.\r")
    at = t.expect("reading", start=at)
    time.sleep(2)
    t.type("\x03")
    at = t.expect(r"\(interrupted\)", 20, start=at)
    at = t.expect("> ", start=at)
    time.sleep(1)  # the prompt is shown before the line editor has the terminal
    t.type("some words\x03")
    at = t.expect("Ctrl-C again", start=at)
    at = t.expect("> ", start=at)
    time.sleep(1)
    t.type("\x03")
    equal(t.finish(), 130)


# ------------------------------------------------------------------------------ tokenize, eval and inspect ----

def test_tokenize_vectors():
    for x in ("gpt-2", "llama-bpe", "llama-spm", "qwen2"):
        v = asset("vocab", f"ggml-vocab-{x}.gguf")
        texts = open(v + ".inp", encoding="utf-8").read().split("\n__ggml_vocab_test__\n")
        for n, (text, line) in enumerate(zip(texts, open(v + ".out").read().split("\n"))):
            code, out, err = spillway("tokenize", "-m", v, "--ids", stdin=text)
            equal((code, [int(i) for i in out.split()]), (0, [int(i) for i in line.split()]), f"{x} case {n} {err}")


def test_tokenize_outputs():
    v = asset("vocab", "ggml-vocab-llama-bpe.gguf")
    ids = [int(i) for i in spillway("tokenize", "-m", v, "--ids", "-p", "a\tb\n<|eot_id|>")[1].split()]
    lines = spillway("tokenize", "-m", v, "-p", "a\tb\n<|eot_id|>")[1].decode().splitlines()
    equal([int(line.split("\t")[0]) for line in lines], ids)
    has("\n".join(lines), "\\t")
    items = run_json("tokenize", "-m", v, "--json", "-p", "a\tb\n<|eot_id|>")
    equal([i["id"] for i in items], ids)
    equal("".join(i["text"] for i in items), "a\tb\n<|eot_id|>")
    special = spillway("tokenize", "-m", v, "--ids", "--special", "-p", "<|eot_id|>")[1].split()
    equal(special, [b"128009"])
    equal(spillway("tokenize", "-m", v, "--ids", "--bos", "-p", "a")[1].split()[0], b"128000")
    for flags in ((), ("--ids",)):
        equal(spillway("tokenize", "-m", v, *flags)[:2], (0, b""), "empty text")
    equal(run_json("tokenize", "-m", v, "--json"), [])
    for data in (b"\xff\xfe\0x", b"\xc3"):
        equal(spillway("tokenize", "-m", v, "--ids", stdin=data)[1], spillway("tokenize", "-m", v, "--ids", "-f", temp("bytes", data))[1], "any bytes")


def test_perplexity():
    r = run_json("eval", "ppl", "-m", tiny(), "-f", asset("texts", "kjv.txt"), "-c", 512, "--chunks", 4, "--json")
    equal((r["chunks"], r["ctx"], r["n_predictions"]), (4, 512, 4 * 255))
    if abs(r["ppl"] / 45.3609 - 1) > 0.015:
        raise AssertionError(f"ppl {r['ppl']}, another implementation has 45.3609")
    equal(0 < r["ppl_stderr"] < r["ppl"], True, r["ppl_stderr"])
    equal(abs(2.718281828459045 ** r["nll_mean"] / r["ppl"] - 1) < 1e-6, True, "exp of nll_mean")
    with open(asset("texts", "kjv.txt"), "rb") as f:
        start = f.read(20000)
    code, out, err = spillway("eval", "ppl", "-m", tiny(), "-c", 256, "--chunks", 2, "-b", 7, stdin=start)
    equal(code, 0, err)
    has(out.decode(), "ppl ", "+/-", "254 predictions", "2 chunks of 256")
    a = run_json("eval", "ppl", "-m", tiny(), "-c", 256, "--chunks", 2, "-b", 7, "--json", stdin=start)["ppl"]
    equal(a, run_json("eval", "ppl", "-m", tiny(), "-c", 256, "--chunks", 2, "--json", stdin=start)["ppl"], "any batch size")


def test_perplexity_with_bytes():
    """Keys and values as bytes stay within 0.2 % of halves."""
    not_sanitized()
    a, b = (run_json("eval", "ppl", "-m", instruct(), "-f", asset("texts", "kjv.txt"), "-c", 512, "--chunks", 8, "-ctk", t, "-ctv", t, "--json")["ppl"] for t in ("f16", "q8_0"))
    equal(0 < abs(b / a - 1) < 0.002, True, (a, b))


def test_inspect():
    r = run_json("inspect", tiny(), "--json", "-c", 1024)
    equal((r["architecture"], r["n_layer"], r["n_embd"], r["n_head"], r["n_head_kv"], r["head_dim"], r["n_vocab"], r["n_ctx_train"]), ("llama", 5, 64, 8, 4, 8, 512, 512))
    equal((r["has_weights"], r["supported"], r["memory"]["n_ctx"]), (True, True, 1024))
    equal(r["kv_bytes_per_pos"], 5 * 4 * (16 * 2 * 2 + 9 + 1), "layers, KV heads, dimensions rounded up to 16, K and V, bytes; 1088 of a page's code and 64 of its mean, rounded up")
    equal(run_json("inspect", tiny(), "--json", "-ctk", "f32", "-ctv", "f32")["kv_bytes_per_pos"], 5 * 4 * (16 * 2 * 4 + 9 + 1), "floats")
    q8 = run_json("inspect", tiny(), "--json", "-ctk", "q8_0", "-ctv", "q8_0", "-c", 1024)
    equal(q8["kv_bytes_per_pos"], 5 * 4 * (16 * 2 + 5 + 9 + 1), "bytes, and (16 + 128) scales a page, rounded up")
    equal(q8["memory"]["kv"] < 0.65 * r["memory"]["kv"], True)
    equal(sum(t["tensors"] for t in r["types"]), len(r["tensors"]))
    equal(sum(t["bytes"] for t in r["tensors"]), r["weight_bytes"])
    equal(r["memory"]["available"] > 0, True)
    has([t["name"] for t in r["tensors"]], "token_embd.weight")
    has([k["name"] for k in r["keys"]], "general.architecture")
    code, out, err = spillway("inspect", tiny(), "--tensors", "--keys")
    equal((code, err), (0, ""))
    has(out.decode(), "token_embd.weight", "general.architecture", "KV per position", "512 positions")
    equal(any(ord(c) < 32 and c != "\n" for c in out.decode()), False, "control characters")
    equal(run_json("inspect", "-m", instruct(), "--json")["chat_template"], "chatml")


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
            what, note = "FAIL", ""
            print(f"{name}: {type(e).__name__}: {str(e)[:1000]}", file=sys.stderr, flush=True)
        counts[what] += 1
        print(f"{what:5s} {name}{note}", flush=True)
    print(f"{counts['ok']} passed, {counts['FAIL']} failed, {counts['skip']} skipped")
    return 1 if counts["FAIL"] else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    finally:
        shutil.rmtree(TMP, ignore_errors=True)
