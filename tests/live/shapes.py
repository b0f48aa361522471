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
}
