#!/usr/bin/env python3
"""Write the tiny models of the test suite: random weights, one file per feature that the real test models do not cover.

usage: make_tiny.py DIR          (needs numpy and PyPI's gguf; the files in tests/data were made by `tools/make_tiny.py tests/data`)

Every model has a byte-level tokenizer (256 byte tokens, <|bos|>, <|eos|>, <|im_start|>, <|im_end|> and four unused ones), weights small enough that the
logits stay in a normal range, and a context of 4096.
"""
import os
import sys

import gguf
import numpy as np

Q = gguf.GGMLQuantizationType

MODELS = {
    # name: architecture, heads, KV heads, head_dim, embedding, feed-forward, layers, weight type, output type, options
    "tiny-llama3": dict(arch="llama", heads=6, kv=2, hd=24, embd=96, ff=128, layers=2, type=Q.Q8_0, rope_freqs=True),
    "tiny-linear": dict(arch="llama", heads=4, kv=4, hd=16, embd=64, ff=96, layers=2, type=Q.Q4_0, scaling=("linear", 4.0, 1024)),
    "tiny-yarn": dict(arch="llama", heads=8, kv=1, hd=40, embd=64, ff=96, layers=2, type=Q.F16, scaling=("yarn", 8.0, 64)),
    "tiny-qwen2": dict(arch="qwen2", heads=7, kv=1, hd=8, embd=64, ff=160, layers=3, type=Q.BF16, bias=True, output=Q.Q5_1),
    "tiny-qwen3": dict(arch="qwen3", heads=4, kv=2, hd=32, embd=96, ff=96, layers=2, type=Q.Q4_1, qk_norm=True),
}


def byte_tokens():
    """The printable characters that stand for the 256 bytes in a byte-level vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table, extra = {b: chr(b) for b in plain}, 256
    for b in range(256):
        if b not in table:
            table[b], extra = chr(extra), extra + 1
    return [table[b] for b in range(256)]


def add_tokenizer(w):
    specials = ["<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"] + [f"<|unused{i}|>" for i in range(4)]
    tokens = byte_tokens() + specials
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(tokens)
    w.add_token_types([1] * 256 + [3] * len(specials))
    w.add_token_merges(["t h", "Ġ a", "th e"])
    w.add_bos_token_id(256)
    w.add_eos_token_id(257)
    w.add_add_bos_token(False)
    return len(tokens)


def write(path, name, m, seed):
    r = np.random.default_rng(seed)
    w = gguf.GGUFWriter(path, m["arch"])
    w.add_name(name)
    w.add_context_length(4096)
    w.add_embedding_length(m["embd"])
    w.add_block_count(m["layers"])
    w.add_feed_forward_length(m["ff"])
    w.add_head_count(m["heads"])
    w.add_head_count_kv(m["kv"])
    w.add_key_length(m["hd"])
    w.add_value_length(m["hd"])
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_dimension_count(m["hd"])
    w.add_rope_freq_base(10000.0)
    if "scaling" in m:
        kind, factor, orig = m["scaling"]
        w.add_rope_scaling_type(gguf.RopeScalingType(kind))
        w.add_rope_scaling_factor(factor)
        w.add_rope_scaling_orig_ctx_len(orig)
    n_vocab = add_tokenizer(w)

    def matrix(tensor, rows, cols, gain=1.0, kind=None):
        kind = kind or m["type"]
        x = (r.standard_normal((rows, cols)) * gain / np.sqrt(cols)).astype(np.float32)
        w.add_tensor(tensor, gguf.quants.quantize(x, kind), raw_dtype=kind)

    def vector(tensor, n, mean=1.0, spread=0.2):
        w.add_tensor(tensor, (mean + spread * r.standard_normal(n)).astype(np.float32))

    e, hd, q_out, kv_out = m["embd"], m["hd"], m["heads"] * m["hd"], m["kv"] * m["hd"]
    in_type = Q.F16 if q_out % 32 else None  # the output projection's inputs must fill the blocks of its type
    matrix("token_embd.weight", n_vocab, e, 4.0)
    vector("output_norm.weight", e)
    if "output" in m:
        matrix("output.weight", n_vocab, e, 4.0, m["output"])
    if m.get("rope_freqs"):
        w.add_tensor("rope_freqs.weight", np.linspace(1, 8, hd // 2).astype(np.float32))
    for i in range(m["layers"]):
        p = f"blk.{i}."
        vector(p + "attn_norm.weight", e)
        matrix(p + "attn_q.weight", q_out, e, 2.0)
        matrix(p + "attn_k.weight", kv_out, e, 2.0)
        matrix(p + "attn_v.weight", kv_out, e)
        matrix(p + "attn_output.weight", e, q_out, 1.0, in_type)
        if m.get("bias"):
            for x, n in (("q", q_out), ("k", kv_out), ("v", kv_out)):
                vector(p + f"attn_{x}.bias", n, 0.0, 1.0)
        if m.get("qk_norm"):
            vector(p + "attn_q_norm.weight", hd)
            vector(p + "attn_k_norm.weight", hd)
        vector(p + "ffn_norm.weight", e)
        matrix(p + "ffn_gate.weight", m["ff"], e)
        matrix(p + "ffn_up.weight", m["ff"], e)
        matrix(p + "ffn_down.weight", e, m["ff"])
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    os.makedirs(sys.argv[1], exist_ok=True)
    for seed, (name, m) in enumerate(MODELS.items()):
        path = os.path.join(sys.argv[1], name + ".gguf")
        write(path, name, m, seed)
        print(path, os.path.getsize(path))


if __name__ == "__main__":
    main()
