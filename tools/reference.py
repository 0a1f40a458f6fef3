#!/usr/bin/env python3
"""The independent twin of the engine: a plain numpy forward pass that writes golden logits.

It shares no code with the engine: GGUF files are read and weights dequantised by PyPI's `gguf`, and every formula is written out from
the papers.  Activations are never quantised; products are f32 (--f64: everything is f64), sums over a row (norm, softmax, log-sum-exp) are f64.
Only K and V are rounded to f16, as the engine's store does (--kv-f32: not even these).

The one thing to know: that rounding limits how well two correct programs can agree.  A K or V that lies next to the middle of two halves is
rounded up by one and down by the other, and the logits then differ far more than their arithmetic does: run this file with and without --f64,
and again with --kv-f32, to see both.

    tools/reference.py MODEL --ids 1,2,3              top of the last position, as text
    tools/reference.py MODEL --ids-file F --f64 -o G.bin
                                                      golden for tests/test_golden.c (layout at write_golden)
    tools/reference.py MODEL --ids-file F -o G.npz    golden with every logit
    tools/reference.py MODEL --ppl-ids F -c C --chunks N
                                                      perplexity as llama-perplexity defines it
Ids are numbers separated by white space or commas.
"""
import argparse
import math
import struct
import sys
from pathlib import Path

import gguf
import numpy as np

ARCHITECTURES = {"llama": "pairs", "qwen2": "halves", "qwen3": "halves"}  # which dimensions turn together
N_SAMPLE, N_TOP = 32, 16


class Model:
    """Hyper-parameters and tensors by name; weights are dequantised when first used and kept."""

    def __init__(self, path, args):
        self.reader = gguf.GGUFReader(path)
        self.tensors = {t.name: t for t in self.reader.tensors}
        self.cache = {}
        self.kv_f32 = args.kv_f32
        self.real = np.float64 if args.f64 else np.float32
        arch = self.key("general.architecture")
        if arch not in ARCHITECTURES:
            sys.exit(f"{path}: architecture {arch} is not one of {', '.join(ARCHITECTURES)}")
        self.order = ARCHITECTURES[arch]
        get = lambda name, default=None: self.key(f"{arch}.{name}", default)
        self.n_layer, self.n_embd, self.n_head = get("block_count"), get("embedding_length"), get("attention.head_count")
        self.n_head_kv = get("attention.head_count_kv", self.n_head)
        self.head_dim = get("attention.key_length", self.n_embd // self.n_head)
        self.eps = get("attention.layer_norm_rms_epsilon", 1e-5)
        self.n_rot = get("rope.dimension_count", self.head_dim)
        self.n_ctx_train = get("context_length")
        base = args.rope_freq_base or get("rope.freq_base", 10000.0)
        kind = args.rope_scaling or get("rope.scaling.type", "none")
        factor = args.rope_scale or get("rope.scaling.factor", 1.0)
        orig_ctx = args.yarn_orig_ctx or get("rope.scaling.original_context_length", self.n_ctx_train)
        self.freq, self.mscale = self.rope_frequencies(base, kind, factor, orig_ctx)
        self.mscale *= get("rope.scaling.attn_factor", 1.0)
        self.n_vocab = int(self.tensors["token_embd.weight"].shape[1])
        self.adds_bos = self.key("tokenizer.ggml.add_bos_token", self.key("tokenizer.ggml.model", "") == "llama")
        self.bos = self.key("tokenizer.ggml.bos_token_id", -1)

    def key(self, name, default=None):
        field = self.reader.get_field(name)
        return default if field is None else field.contents()

    def has(self, name):
        return name in self.tensors

    def weight(self, name):
        """Rows are outputs, columns inputs."""
        if name not in self.cache:
            t = self.tensors[name]
            shape = [int(n) for n in reversed(t.shape)]
            self.cache[name] = gguf.quants.dequantize(t.data, t.tensor_type).astype(self.real).reshape(shape)
        return self.cache[name]

    def rope_frequencies(self, base, kind, factor, orig_ctx):
        """Radians per position of every pair, in f64, and the factor on cosine and sine."""
        i = np.arange(self.n_rot // 2, dtype=np.float64)
        freq = float(base) ** (-2.0 * i / self.n_rot)
        if self.has("rope_freqs.weight"):  # Llama 3 stores the divisors
            freq = freq / self.weight("rope_freqs.weight").astype(np.float64)
        if kind == "linear":
            return freq / factor, 1.0
        if kind != "yarn" or factor == 1.0:
            return freq, 1.0
        # arXiv:2309.00071: the pair that makes `turns` turns within the original context, solved for its number.
        pair_at = lambda turns: self.n_rot * math.log(orig_ctx / (turns * 2 * math.pi)) / (2 * math.log(base))
        low, high = max(0, math.floor(pair_at(32))), min(self.n_rot - 1, math.ceil(pair_at(1)))
        keep = 1 - np.clip((i - low) / max(0.001, high - low), 0, 1)  # 1: fast pairs, which stay as trained
        return freq / factor * (1 - keep) + freq * keep, 1 + 0.1 * math.log(factor)

    def rotate(self, x):
        """x: [heads][n][head_dim], positions 0..n-1."""
        angle = np.arange(x.shape[1], dtype=np.float64)[:, None] * self.freq[None, :]
        cos, sin = (np.cos(angle) * self.mscale).astype(self.real), (np.sin(angle) * self.mscale).astype(self.real)
        half = self.n_rot // 2
        first, second = (slice(0, self.n_rot, 2), slice(1, self.n_rot, 2)) if self.order == "pairs" else (slice(0, half), slice(half, self.n_rot))
        out = x.copy()
        out[..., first] = x[..., first] * cos - x[..., second] * sin
        out[..., second] = x[..., first] * sin + x[..., second] * cos
        return out

    def rms_norm(self, x, name):
        scale = 1 / np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=-1, keepdims=True) + self.eps)
        return (x * scale).astype(self.real) * self.weight(name)

    def linear(self, x, name):
        y = x @ self.weight(f"{name}.weight").T
        return y + self.weight(f"{name}.bias") if self.has(f"{name}.bias") else y

    def attend(self, x, layer):
        n, dim = len(x), self.head_dim
        split = lambda y: y.reshape(n, -1, dim).transpose(1, 0, 2)
        q, k, v = (split(self.linear(x, f"{layer}.attn_{part}")) for part in "qkv")
        if self.has(f"{layer}.attn_q_norm.weight"):
            q, k = self.rms_norm(q, f"{layer}.attn_q_norm.weight"), self.rms_norm(k, f"{layer}.attn_k_norm.weight")
        q, k = self.rotate(q), self.rotate(k)
        if not self.kv_f32:
            k, v = k.astype(np.float16).astype(self.real), v.astype(np.float16).astype(self.real)
        future = np.triu(np.ones((n, n), dtype=bool), 1)
        out = np.empty((n, self.n_head * dim), dtype=self.real)
        for h in range(self.n_head):
            kv = h // (self.n_head // self.n_head_kv)
            score = (q[h] @ k[kv].T).astype(np.float64) / math.sqrt(dim)
            score[future] = -np.inf
            p = np.exp(score - score.max(axis=1, keepdims=True))
            out[:, h * dim:(h + 1) * dim] = (p / p.sum(axis=1, keepdims=True)).astype(self.real) @ v[kv]
        return self.linear(out, f"{layer}.attn_output")

    def feed_forward(self, x, layer):
        gate, up = self.linear(x, f"{layer}.ffn_gate"), self.linear(x, f"{layer}.ffn_up")
        wide = gate.astype(np.float64)
        return self.linear((wide / (1 + np.exp(-wide)) * up).astype(self.real), f"{layer}.ffn_down")

    def logits(self, ids):
        """[n][n_vocab]: one evaluation of ids from an empty context."""
        x = self.weight("token_embd.weight")[np.asarray(ids)]
        for i in range(self.n_layer):
            layer = f"blk.{i}"
            x = x + self.attend(self.rms_norm(x, f"{layer}.attn_norm.weight"), layer)
            x = x + self.feed_forward(self.rms_norm(x, f"{layer}.ffn_norm.weight"), layer)
        x = self.rms_norm(x, "output_norm.weight")
        return self.linear(x, "output" if self.has("output.weight") else "token_embd")


def log_sum_exp(logits):
    wide = logits.astype(np.float64)
    top = wide.max(axis=-1, keepdims=True)
    return (top + np.log(np.exp(wide - top).sum(axis=-1, keepdims=True)))[..., 0]


def write_golden(path, ids, logits):
    """Little-endian: magic "SPWGOLD1"; u32 n_tokens, n_vocab, n_sample, n_top; i32 ids[n_tokens]; u32 sample[n_sample]: the ids whose
    logits every position holds; then for every position f32 lse, f32 logit[n_sample], and n_top of (i32 id, f32 logit), largest first."""
    n, n_vocab = logits.shape
    sample = (np.arange(N_SAMPLE) * n_vocab // N_SAMPLE + n_vocab // (2 * N_SAMPLE)).astype("<u4")
    lse = log_sum_exp(logits)
    with open(path, "wb") as f:
        f.write(b"SPWGOLD1" + struct.pack("<4I", n, n_vocab, N_SAMPLE, N_TOP))
        f.write(np.asarray(ids, dtype="<i4").tobytes() + sample.tobytes())
        for row, total in zip(logits, lse):
            top = np.argsort(-row, kind="stable")[:N_TOP]
            f.write(struct.pack("<f", total) + row[sample].astype("<f4").tobytes())
            f.write(b"".join(struct.pack("<if", i, row[i]) for i in top))


def perplexity(model, ids, n_ctx, n_chunks):
    """Mean over the second half of every chunk; with a BOS model a chunk's first token is replaced by BOS."""
    nll, count, first = 0.0, 0, n_ctx // 2
    n_chunks = min(n_chunks or len(ids), len(ids) // n_ctx)
    for c in range(n_chunks):
        chunk = list(ids[c * n_ctx:(c + 1) * n_ctx])
        if model.adds_bos:
            chunk[0] = model.bos
        logits = model.logits(chunk)[first:-1]
        target = logits[np.arange(len(logits)), chunk[first + 1:]]
        nll += float((log_sum_exp(logits) - target).sum())
        count += len(logits)
        print(f"[{c + 1}/{n_chunks}] {math.exp(nll / count):.4f}", file=sys.stderr)
    return math.exp(nll / count)


def read_ids(text):
    return [int(word) for word in text.replace(",", " ").split()]


def main():
    parser = argparse.ArgumentParser(description="golden logits and perplexities, independent of the engine")
    parser.add_argument("model")
    parser.add_argument("--ids", help="token ids, separated by commas")
    parser.add_argument("--ids-file", help="file of token ids")
    parser.add_argument("-o", "--output", help="OUT.bin (what the tests read) or OUT.npz (everything)")
    parser.add_argument("--all", action="store_true", help="print the top of every position, not only of the last")
    parser.add_argument("--ppl-ids", help="file of token ids of a text, for its perplexity")
    parser.add_argument("-c", "--ctx", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=0, help="0: all")
    parser.add_argument("--f64", action="store_true", help="compute in f64 throughout")
    parser.add_argument("--kv-f32", action="store_true", help="do not round K and V to f16")
    parser.add_argument("--rope-scaling", choices=["none", "linear", "yarn"])
    parser.add_argument("--rope-scale", type=float)
    parser.add_argument("--rope-freq-base", type=float)
    parser.add_argument("--yarn-orig-ctx", type=int)
    args = parser.parse_args()
    model = Model(args.model, args)
    if args.ppl_ids:
        print(f"{perplexity(model, read_ids(Path(args.ppl_ids).read_text()), args.ctx, args.chunks):.4f}")
        return
    if not args.ids and not args.ids_file:
        parser.error("one of --ids, --ids-file and --ppl-ids is needed")
    ids = read_ids(args.ids if args.ids else Path(args.ids_file).read_text())
    bad = [i for i in ids if not 0 <= i < model.n_vocab]
    if not ids or bad:
        parser.error(f"ids must be 0..{model.n_vocab - 1}, found {bad[:1] or 'none'}")
    logits = model.logits(ids)
    if args.output and args.output.endswith(".npz"):
        np.savez_compressed(args.output, ids=np.asarray(ids, dtype=np.int32), logits=logits.astype(np.float32))
    elif args.output:
        write_golden(args.output, ids, logits)
    else:
        for pos in range(0 if args.all else len(ids) - 1, len(ids)):
            top = np.argsort(-logits[pos], kind="stable")[:5]
            print(pos, " ".join(f"{i}:{logits[pos][i]:.5f}" for i in top))


if __name__ == "__main__":
    main()
