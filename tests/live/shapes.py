"""The models of the live comparisons: published shapes, as Hugging Face configs."""


def llama(**sizes):
    scaling = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    scaling["factor"] = sizes.pop("factor", 32.0)
    return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-5,
            "max_position_embeddings": 131072, "rope_parameters": scaling, "attention_bias": False,
            "mlp_bias": False, **sizes}


def qwen(family, **sizes):
    return {"model_type": family, "architectures": [family.capitalize() + "ForCausalLM"],
            "rms_norm_eps": 1e-6, "max_position_embeddings": 40960, "use_sliding_window": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}, **sizes}


def scaled(config, positions, **rope):
    """The config with another rope object, for contexts of `positions`."""
    return {**config, "max_position_embeddings": positions, "rope_parameters": rope}


def sliding(config, window, first_layer):
    """The config with layers that slide, from `first_layer` on."""
    return {**config, "use_sliding_window": True, "sliding_window": window, "max_window_layers": first_layer}


def longest_context(config):
    """As `rollout` has it: at the window's own length transformers writes a mask (docs/numerics.md)."""
    window = config["sliding_window"] if config.get("use_sliding_window") else 1 << 30
    return min(config["max_position_embeddings"], window - 1)


def sizes(width, layers, heads, kv_heads, head_width, feed_forward, vocabulary, tied=True):
    return {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "head_dim": head_width, "intermediate_size": feed_forward,
            "vocab_size": vocabulary, "tie_word_embeddings": tied, "hidden_act": "silu",
            "dtype": "bfloat16"}


SHAPES = {
    "qwen3-0.6b": qwen("qwen3", **sizes(1024, 28, 16, 8, 128, 3072, 151936), attention_bias=False),
    "qwen3-1.7b": qwen("qwen3", **sizes(2048, 28, 16, 8, 128, 6144, 151936), attention_bias=False),
    "qwen3-8b": qwen("qwen3", **sizes(4096, 36, 32, 8, 128, 12288, 151936, tied=False),
                     attention_bias=False),
    "qwen2.5-0.5b": qwen("qwen2", **sizes(896, 24, 14, 2, 64, 4864, 151936)),
    "qwen2.5-7b": qwen("qwen2", **sizes(3584, 28, 28, 4, 128, 18944, 152064, tied=False)),
    "llama-3.2-1b": llama(**sizes(2048, 16, 32, 8, 64, 8192, 128256)),
    "llama-3.1-8b": llama(**sizes(4096, 32, 32, 8, 128, 14336, 128256, tied=False), factor=8.0),
    # What a config may say of long contexts, in few layers. Two of yarn: no frequency of Qwen3's tells on which device
    # its ramp is made, seven of the other's do. A factor of 3, so that a division would have other bits.
    "qwen3-yarn": scaled(
        qwen("qwen3", **sizes(1024, 4, 16, 8, 128, 3072, 151936), attention_bias=False), 131072,
        rope_type="yarn", rope_theta=1000000.0, factor=4.0, original_max_position_embeddings=32768),
    "llama-2-yarn": scaled(
        llama(**sizes(2048, 4, 16, 16, 128, 5504, 32000, tied=False)), 65536,
        rope_type="yarn", rope_theta=10000.0, factor=16.0, original_max_position_embeddings=4096),
    "llama-2-linear": scaled(
        llama(**sizes(2048, 4, 16, 16, 128, 5504, 32000, tied=False)), 12288,
        rope_type="linear", rope_theta=10000.0, factor=3.0),
    "qwen2-window": sliding(qwen("qwen2", **sizes(896, 4, 14, 2, 64, 4864, 151936)), 4096, first_layer=2),
}
