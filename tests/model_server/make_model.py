"""Writes a random language model of half a megabyte, for llama.cpp's server. Usage: make_model.py FILE

Its words are nonsense. Its vocabulary is printable ASCII, and bytes for the rest, so that every text and every grammar works.
The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (read 2026-12-01).
"""
import sys

import gguf
import numpy as np

WIDTH, HEADS, LAYERS, HIDDEN, CONTEXT = 64, 4, 2, 128, 8192
SPECIAL = ["<unk>", "<s>", "</s>"]
PRINTABLE = [chr(c) for c in range(33, 127)]

# Tool calls are JSON between two tags, as Hermes and Qwen models write them; the server forces them by a grammar.
CHAT_TEMPLATE = """\
{%- if tools %}<|im_start|>system
Call tools with <tool_call>{"name": NAME, "arguments": ARGUMENTS}</tool_call>.
<tools>
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
</tools><|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == "tool" %}<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% else %}<|im_start|>{{ message.role }}
{{ message.content or "" }}
{%- for call in message.tool_calls or [] %}
<tool_call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>
{%- endfor %}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

tokens = [t.encode() for t in SPECIAL] + [f"<0x{b:02X}>".encode() for b in range(256)]
types = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL] + [gguf.TokenType.BYTE] * 256
tokens += ["\u2581".encode()] + [c.encode() for c in PRINTABLE]
types += [gguf.TokenType.NORMAL] * (len(tokens) - len(types))
TOOL_CALL = len(tokens)
tokens.append(b"<tool_call>")
types.append(gguf.TokenType.USER_DEFINED)

writer = gguf.GGUFWriter(sys.argv[1], "llama")
writer.add_name("random")
writer.add_context_length(CONTEXT)
writer.add_embedding_length(WIDTH)
writer.add_block_count(LAYERS)
writer.add_feed_forward_length(HIDDEN)
writer.add_head_count(HEADS)
writer.add_head_count_kv(HEADS)
writer.add_rope_dimension_count(WIDTH // HEADS)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_vocab_size(len(tokens))
writer.add_file_type(gguf.LlamaFileType.ALL_F32)
writer.add_tokenizer_model("llama")
writer.add_tokenizer_pre("default")
writer.add_token_list(tokens)
writer.add_token_scores([0.0] * len(tokens))
writer.add_token_types(types)
writer.add_bos_token_id(1)
writer.add_eos_token_id(2)
writer.add_unk_token_id(0)
writer.add_add_bos_token(True)
writer.add_chat_template(CHAT_TEMPLATE)

random = np.random.default_rng(1)


def tensor(name, *shape, scale=0.3):
    writer.add_tensor(name, (random.standard_normal(shape) * scale).astype(np.float32))


tensor("token_embd.weight", len(tokens), WIDTH, scale=1.0)
for layer in range(LAYERS):
    for name in ["attn_q", "attn_k", "attn_v", "attn_output"]:
        tensor(f"blk.{layer}.{name}.weight", WIDTH, WIDTH)
    for name, shape in [("ffn_gate", (HIDDEN, WIDTH)), ("ffn_up", (HIDDEN, WIDTH)), ("ffn_down", (WIDTH, HIDDEN))]:
        tensor(f"blk.{layer}.{name}.weight", *shape)
    for name in ["attn_norm", "ffn_norm"]:
        writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(WIDTH, dtype=np.float32))
writer.add_tensor("output_norm.weight", np.ones(WIDTH, dtype=np.float32))
# A byte alone is never chosen, because its logit is 0 and some printable character's is larger.
output = random.standard_normal((len(tokens), WIDTH)).astype(np.float32) * 0.5
output[: len(SPECIAL) + 256] = 0
# A tool call and the end of the text are chosen often.
output[TOOL_CALL] *= 3
output[SPECIAL.index("</s>")] = random.standard_normal(WIDTH) * 0.8
writer.add_tensor("output.weight", output)

writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
