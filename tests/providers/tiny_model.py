"""A real server on a tiny model: llama.cpp's, by the package ``xllamacpp``, on random weights from ``gguf``.

``python tiny_model.py FOLDER`` writes the model there, serves it on loopback until its input ends, and says
where on its first line. What it says is noise; how it says it is what an OpenAI-compatible server says.
"""

from __future__ import annotations

import sys
from pathlib import Path

WIDTH, LAYERS, HEADS, CONTEXT = 64, 1, 2, 2_048
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
#: How a conversation becomes a text.
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"


def write_model(file: Path) -> None:
    """A llama of one layer: syllables and bytes as tokens, random weights."""
    import gguf
    import numpy as np

    words = [first + second for first in ("", "▁", *_LETTERS) for second in _LETTERS]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *words]
    kinds = [2, 3, 3, *[6] * 256, *[1] * (len(words) + 1)]
    random = np.random.default_rng(7)

    def weights(*shape: int) -> np.ndarray:
        return random.normal(0, 0.3, shape).astype(np.float32)

    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(n) for n in range(len(tokens))])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    output = weights(len(tokens), WIDTH)
    output[: 3 + 256] = 0  # noise of letters is easier to read than noise of bytes
    tensors = {"token_embd.weight": weights(len(tokens), WIDTH), "output.weight": output,
               "output_norm.weight": np.ones(WIDTH, np.float32)}
    for layer in range(LAYERS):
        part = f"blk.{layer}."
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors[f"{part}{name}.weight"] = weights(WIDTH, WIDTH)
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"{part}{name}.weight"] = np.ones(WIDTH, np.float32)
        for name, shape in (("ffn_up", (2 * WIDTH, WIDTH)), ("ffn_gate", (2 * WIDTH, WIDTH)),
                            ("ffn_down", (WIDTH, 2 * WIDTH))):
            tensors[f"{part}{name}.weight"] = weights(*shape)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def serve(folder: Path) -> None:
    """Serve until the input ends."""
    import xllamacpp

    file = folder / "tiny.gguf"
    write_model(file)
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx = CONTEXT
    params.n_parallel = 2
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.cpuparams.n_threads = 1
    params.use_jinja = True
    params.warmup = False
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
