#!/usr/bin/env python3
"""Write a GGUF model of any shape with synthetic weights: for measuring speed, where what a model says does not matter.

    tools/make_model.py OUT --like llama-3.2-1b --type Q8_0
    tools/make_model.py OUT --like llama-3.1-8b --type Q4_K --type-of 'output.weight=Q6_K'
    tools/make_model.py OUT --arch qwen2 --layers 4 --embd 512 --heads 8 --kv-heads 2 --ff 1536 --vocab 1000 --ctx 4096 --type Q4_0

Needs numpy and PyPI's gguf.  Flags override what --like gives.  Weights are random with the spread that keeps activations in a normal range; blocks of quantised
types are drawn as blocks (random numbers under a plausible scale), not quantised from floats.  The file is written in pieces, so that a model larger than memory can be
made.  A type whose blocks do not fill a row is replaced as llama.cpp does, and the program says so.  The tokenizer is byte-level, padded to the vocabulary.
"""
import argparse
import fnmatch
import math
import os
import sys

import gguf
import numpy as np

Q = gguf.GGMLQuantizationType
TYPES = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q4_K", "Q6_K", "F16", "BF16", "F32")
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q4_K": 14, "Q6_K": 18, "BF16": 32}
INSTEAD = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}  # where rows are no multiple of 256
PIECE = 1 << 24  # weights made at once
SPECIALS = ["<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"]

SHAPES = {
    "smollm2-135m": dict(arch="llama", layers=30, embd=576, heads=9, kv_heads=3, head_dim=64, ff=1536, vocab=49152, ctx=8192, rope_base=1e5, tied=True),
    "llama-3.2-1b": dict(arch="llama", layers=16, embd=2048, heads=32, kv_heads=8, head_dim=64, ff=8192, vocab=128256, ctx=131072, rope_base=5e5, tied=True, rope_factor=32),
    "llama-3.1-8b": dict(arch="llama", layers=32, embd=4096, heads=32, kv_heads=8, head_dim=128, ff=14336, vocab=128256, ctx=131072, rope_base=5e5, rope_factor=8),
    "qwen2.5-0.5b": dict(arch="qwen2", layers=24, embd=896, heads=14, kv_heads=2, head_dim=64, ff=4864, vocab=151936, ctx=32768, rope_base=1e6, tied=True),
    "qwen2.5-1.5b": dict(arch="qwen2", layers=28, embd=1536, heads=12, kv_heads=2, head_dim=128, ff=8960, vocab=151936, ctx=32768, rope_base=1e6, tied=True),
}
NEEDED = ("arch", "layers", "embd", "heads", "kv_heads", "ff", "vocab", "ctx")


def fail(message):
    sys.exit(f"make_model.py: {message}")


# ---- weights ---------------------------------------------------------------------------------------------------------


def halves(r, n, size, signed):
    """n block scales about `size`, as the two bytes of a half; of either sign where that is what makes the mean of the weights zero."""
    x = size * r.uniform(0.7, 1.3, n)
    if signed:
        x *= r.choice((-1.0, 1.0), n)
    return x.astype(np.float16).reshape(n, 1).view(np.uint8)


def random_bytes(r, n, count):
    return np.frombuffer(r.bytes(n * count), np.uint8).reshape(n, count)


def q8_0(r, n, std):
    return np.hstack((halves(r, n, std / 73.9, True), random_bytes(r, n, 32)))


def q4_0(r, n, std):
    return np.hstack((halves(r, n, std / 4.6, True), random_bytes(r, n, 16)))


def q4_1(r, n, std):
    d = halves(r, n, std / 4.6, False)
    low = (d.view(np.float16).astype(np.float32) * -7.5).astype(np.float16).view(np.uint8)
    return np.hstack((d, low, random_bytes(r, n, 16)))


def q5_0(r, n, std):
    return np.hstack((halves(r, n, std / 9.2, True), random_bytes(r, n, 4 + 16)))


def q4_k(r, n, std):
    """Eight groups of 32 with 6-bit scales and minimums.  A minimum equals its scale and the block's factor of them is 7.5 times as large: mean zero."""
    d = halves(r, n, std / (48 * 4.6), False)
    factor = (d.view(np.float16).astype(np.float32) * 7.5).astype(np.float16).view(np.uint8)
    s = r.integers(32, 64, (n, 8), np.uint8)
    first, last = s[:, :4], s[:, 4:]
    top = first | (last >> 4) << 6
    return np.hstack((d, factor, top, top, (last & 15) | (last & 15) << 4, random_bytes(r, n, 128)))


def q6_k(r, n, std):
    scales = (r.integers(32, 64, (n, 16), np.int8) * r.choice(np.array((-1, 1), np.int8), (n, 16))).view(np.uint8)
    return np.hstack((random_bytes(r, n, 128 + 64), scales, halves(r, n, std / (48 * 18.5), True)))


BLOCKS = {"Q8_0": q8_0, "Q4_0": q4_0, "Q4_1": q4_1, "Q5_0": q5_0, "Q4_K": q4_k, "Q6_K": q6_k}


def piece(r, kind, n, std):
    """n weights of a type with standard deviation std, as an array of bytes."""
    if kind in BLOCKS:
        out = BLOCKS[kind](r, n // gguf.GGML_QUANT_SIZES[Q[kind]][0], std)
    else:
        x = r.standard_normal(n, np.float32) * np.float32(std)
        out = x.astype(np.float16) if kind == "F16" else (x.view(np.uint32) >> 16).astype(np.uint16) if kind == "BF16" else x
    return np.ascontiguousarray(out).reshape(-1).view(np.uint8)


# ---- the model -------------------------------------------------------------------------------------------------------


def byte_tokens():
    """The printable characters that stand for the 256 bytes in a byte-level vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table, extra = {b: chr(b) for b in plain}, 256
    for b in range(256):
        if b not in table:
            table[b], extra = chr(extra), extra + 1
    return [table[b] for b in range(256)]


def llama3_factors(head_dim, base, factor, low=1.0, high=4.0, trained=8192):
    """What Llama 3 divides its frequencies by: nothing for short waves, factor for long ones, a blend between."""
    waves = 2 * math.pi * base ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((trained / waves - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def tensors(m):
    """(name, rows, columns, standard deviation) of every tensor; rows 0: a vector in F32 about its mean, 1 for norms and 0 for biases."""
    e, q_out, kv_out = m.embd, m.heads * m.head_dim, m.kv_heads * m.head_dim
    small = 1 / math.sqrt(2 * m.layers)  # what a layer adds to the residual stream
    yield "token_embd.weight", m.vocab, e, 4 / math.sqrt(e)
    yield "output_norm.weight", 0, e, 0.1
    if not m.tied:
        yield "output.weight", m.vocab, e, 4 / math.sqrt(e)
    if m.rope_factor:
        yield "rope_freqs.weight", 0, m.head_dim // 2, 0
    for i in range(m.layers):
        p = f"blk.{i}."
        yield p + "attn_norm.weight", 0, e, 0.1
        for x, n in (("q", q_out), ("k", kv_out), ("v", kv_out)):
            yield p + f"attn_{x}.weight", n, e, 1 / math.sqrt(e)
            if m.arch == "qwen2":
                yield p + f"attn_{x}.bias", 0, n, 0.3
        if m.arch == "qwen3":
            yield p + "attn_q_norm.weight", 0, m.head_dim, 0.1
            yield p + "attn_k_norm.weight", 0, m.head_dim, 0.1
        yield p + "attn_output.weight", e, q_out, small / math.sqrt(q_out)
        yield p + "ffn_norm.weight", 0, e, 0.1
        yield p + "ffn_gate.weight", m.ff, e, 1 / math.sqrt(e)
        yield p + "ffn_up.weight", m.ff, e, 1 / math.sqrt(e)
        yield p + "ffn_down.weight", e, m.ff, small / math.sqrt(m.ff)


def choose_type(m, name, rows, cols, replaced):
    if not rows:
        return "F32"
    wanted = m.type
    for pattern, kind in m.type_of:
        if fnmatch.fnmatchcase(name, pattern):
            wanted = kind
    kind = wanted
    if cols % gguf.GGML_QUANT_SIZES[Q[kind]][0]:
        kind = INSTEAD.get(kind, "F16")
    if cols % gguf.GGML_QUANT_SIZES[Q[kind]][0]:
        kind = "F16"
    if kind != wanted:
        replaced.setdefault((wanted, kind, cols), []).append(name)
    return kind


def vector(m, r, name, n, std):
    if name == "rope_freqs.weight":
        return llama3_factors(m.head_dim, m.rope_base, m.rope_factor)
    return (r.standard_normal(n) * std + (0 if name.endswith(".bias") else 1)).astype(np.float32)


def add_keys(w, m):
    w.add_name(m.name)
    w.add_file_type(FILE_TYPES[m.type])
    w.add_context_length(m.ctx)
    w.add_embedding_length(m.embd)
    w.add_block_count(m.layers)
    w.add_feed_forward_length(m.ff)
    w.add_head_count(m.heads)
    w.add_head_count_kv(m.kv_heads)
    w.add_key_length(m.head_dim)
    w.add_value_length(m.head_dim)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(m.head_dim)
    w.add_rope_freq_base(m.rope_base)
    w.add_vocab_size(m.vocab)
    tokens = byte_tokens() + SPECIALS
    n_real = len(tokens)
    tokens += [f"Ġpad{i}" for i in range(m.vocab - n_real)]
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(tokens)
    w.add_token_types([1] * 256 + [3] * len(SPECIALS) + [1] * (m.vocab - n_real))
    w.add_token_merges(["t h", "Ġ a", "th e"])
    w.add_bos_token_id(256)
    w.add_eos_token_id(257)
    w.add_add_bos_token(False)


def write(m):
    """Header and tensor list first, then the tensors one after the other, each from a generator of its own: its weights depend on the seed and its number alone."""
    w = gguf.GGUFWriter(m.out, m.arch)
    add_keys(w, m)
    listed, replaced = [], {}
    for name, rows, cols, std in tensors(m):
        kind = choose_type(m, name, rows, cols, replaced)
        block, block_bytes = gguf.GGML_QUANT_SIZES[Q[kind]]
        n_bytes = max(rows, 1) * cols // block * block_bytes
        w.add_tensor_info(name, (rows, cols) if rows else (cols,), np.dtype(np.float32), n_bytes, Q[kind])
        listed.append((name, rows, cols, std, kind, n_bytes))
    for (wanted, kind, cols), names in replaced.items():
        print(f"{len(names)} tensors with rows of {cols} are {kind}, not {wanted}: {names[0]}{', ...' if len(names) > 1 else ''}", file=sys.stderr)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_ti_data_to_file()
    f = w.fout[0]
    w.write_padding(f, f.tell())
    for number, (name, rows, cols, std, kind, n_bytes) in enumerate(listed):
        r = np.random.default_rng((m.seed, number))
        if rows:
            at_once = max(1, PIECE // cols)
            for row in range(0, rows, at_once):
                piece(r, kind, min(at_once, rows - row) * cols, std).tofile(f)
        else:
            vector(m, r, name, cols, std).tofile(f)
        w.write_padding(f, n_bytes)
        if sys.stderr.isatty():
            print(f"\r{number + 1}/{len(listed)} tensors", end="\n" if number + 1 == len(listed) else "", file=sys.stderr)
    w.close()
    print(m.out, os.path.getsize(m.out))


# ---- the command line ------------------------------------------------------------------------------------------------


def type_rule(text):
    pattern, equals, kind = text.rpartition("=")
    if not equals or not pattern or kind not in TYPES:
        raise argparse.ArgumentTypeError(f"expected PATTERN=TYPE with one of {', '.join(TYPES)}, found '{text}'")
    return pattern, kind


def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out")
    p.add_argument("--like", choices=SHAPES, help="a known shape, from which the other flags deviate")
    p.add_argument("--arch", choices=("llama", "qwen2", "qwen3"))
    for name, words in (("layers", "number of layers"), ("embd", "width of the residual stream"), ("heads", "query heads"), ("kv-heads", "KV heads"),
                        ("head-dim", "default: --embd / --heads"), ("ff", "width of the feed-forward network"), ("vocab", f"tokens, at least {256 + len(SPECIALS)}"),
                        ("ctx", "trained context")):
        p.add_argument("--" + name, type=int, help=words)
    p.add_argument("--rope-base", type=float, help="default 10000")
    p.add_argument("--rope-factor", type=float, help="Llama 3's stretching of the frequencies; 0: none, the default")
    p.add_argument("--tied", action=argparse.BooleanOptionalAction, help="the output projection is the embedding")
    p.add_argument("--type", choices=TYPES, default="Q8_0")
    p.add_argument("--type-of", type=type_rule, action="append", default=[], metavar="PATTERN=TYPE", help="type of the tensors whose names match; the last match counts")
    p.add_argument("--seed", type=int, default=0)
    m = p.parse_args()
    shape = dict(rope_base=1e4, rope_factor=0.0, tied=False, head_dim=None) | SHAPES.get(m.like, {})
    for key, value in shape.items():
        if getattr(m, key) is None:
            setattr(m, key, value)
    missing = [f"--{k.replace('_', '-')}" for k in NEEDED if getattr(m, k) is None]
    if missing:
        fail(f"without --like these are needed too: {' '.join(missing)}")
    m.head_dim = m.head_dim or m.embd // m.heads
    m.name = f"synthetic {m.like or m.arch}"
    if min(m.layers, m.embd, m.heads, m.kv_heads, m.ff, m.ctx) < 1 or m.seed < 0:
        fail("sizes are at least 1, the seed at least 0")
    if m.vocab < 256 + len(SPECIALS):
        fail(f"--vocab: expected at least {256 + len(SPECIALS)}, found {m.vocab}")
    if m.heads % m.kv_heads:
        fail(f"--heads: expected a multiple of --kv-heads {m.kv_heads}, found {m.heads}")
    if m.head_dim < 8 or m.head_dim % 8:
        fail(f"--head-dim: expected a multiple of 8, found {m.head_dim}")
    return m


if __name__ == "__main__":
    write(parse())
