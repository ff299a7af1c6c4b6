"""Named shapes: the fields of `GPTConfig` that differ from GPT-2's smallest model.

`GPTConfig.preset` builds a config from them. Values are those of the published config files; tests compare the number of weights that
follows with the published one. The last group is here to be counted (`GPTConfig.preset("gpt3").n_parameters()`), not to be built.
"""

from typing import Any

Json = Any

_NO_BIAS = {"qkv_bias": False, "attention_output_bias": False, "mlp_bias": False}
_LLAMA = {"norm": "rms", "positions": "rotary", "activation": "silu", "gated": True, **_NO_BIAS}
_QWEN = {**_LLAMA, "vocab_size": 151_936, "rope_theta": 1e6, "layer_norm_epsilon": 1e-6}
_PYTHIA = {
    "vocab_size": 50_304, "n_positions": 2048, "parallel_residual": True, "positions": "rotary", "rope_fraction": 0.25,
    "activation": "gelu_exact", "tie_word_embeddings": False,
}  # fmt: skip
_GEMMA_3 = {
    **_LLAMA, "vocab_size": 262_144, "n_positions": 32_768, "head_size": 256, "n_kv_head": 1, "layer_norm_epsilon": 1e-6,
    "norm_offset": 1.0, "norm_position": "sandwich", "qk_norm": "head", "rope_theta": 1e6, "rope_local_theta": 1e4,
    "activation": "gelu", "attention_scale": 256**-0.5, "window": 512, "window_pattern": "SSSSSL",
}  # fmt: skip
_GPT_3 = {"n_positions": 2048}
_LLAMA_2 = {**_LLAMA, "vocab_size": 32_000, "n_positions": 4096, "tie_word_embeddings": False}
_FALCON = {
    "vocab_size": 65_024, "n_positions": 2048, "parallel_residual": True, "positions": "rotary", "activation": "gelu_exact", **_NO_BIAS,
}  # fmt: skip

PRESETS: dict[str, dict[str, Json]] = {
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768},
    "gpt2-medium": {"n_layer": 24, "n_head": 16, "n_embd": 1024},
    "gpt2-large": {"n_layer": 36, "n_head": 20, "n_embd": 1280},
    "gpt2-xl": {"n_layer": 48, "n_head": 25, "n_embd": 1600},
    "laptop": {"n_layer": 4, "n_head": 4, "n_embd": 128, "n_positions": 128, "vocab_size": 4096},  # the default run; a context of 128
    # keeps it under four minutes on two cores: time and memory grow with the context. Real training takes 256 and more, GPT-2 1,024.
    "shakespeare": {"n_layer": 4, "n_head": 4, "n_embd": 128, "n_positions": 64, "vocab_size": 65},  # nanoGPT's laptop setting
    "quick": {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 32, "vocab_size": 512},  # seconds: for tests and first looks
    "smollm2-135m": {
        **_LLAMA, "n_layer": 30, "n_head": 9, "n_kv_head": 3, "n_embd": 576, "n_inner": 1536, "n_positions": 8192, "vocab_size": 49_152,
        "rope_theta": 1e5,
    },
    "llama-3.2-1b": {
        **_LLAMA, "n_layer": 16, "n_head": 32, "n_kv_head": 8, "n_embd": 2048, "n_inner": 8192, "n_positions": 131_072,
        "vocab_size": 128_256, "rope_theta": 5e5, "rope_scaling": {
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    },
    "qwen2.5-0.5b": {
        **_QWEN, "n_layer": 24, "n_head": 14, "n_kv_head": 2, "n_embd": 896, "n_inner": 4864, "n_positions": 32_768, "qkv_bias": True,
    },
    "qwen3-0.6b": {
        **_QWEN, "n_layer": 28, "n_head": 16, "n_kv_head": 8, "head_size": 128, "n_embd": 1024, "n_inner": 3072, "n_positions": 40_960,
        "qk_norm": "head",
    },
    "pythia-14m": {**_PYTHIA, "n_layer": 6, "n_head": 4, "n_embd": 128, "n_positions": 512},
    "pythia-70m": {**_PYTHIA, "n_layer": 6, "n_head": 8, "n_embd": 512},
    "pythia-160m": {**_PYTHIA, "n_layer": 12, "n_head": 12, "n_embd": 768},
    "olmo-2-1b": {
        **_LLAMA, "n_layer": 16, "n_head": 16, "n_embd": 2048, "n_inner": 8192, "n_positions": 4096, "vocab_size": 100_352,
        "rope_theta": 5e5, "layer_norm_epsilon": 1e-6, "norm_position": "output", "qk_norm": "all", "tie_word_embeddings": False,
    },
    "gemma-3-270m": {**_GEMMA_3, "n_layer": 18, "n_head": 4, "n_embd": 640, "n_inner": 2048, "embedding_scale": 640**0.5},
    "gemma-3-1b": {**_GEMMA_3, "n_layer": 26, "n_head": 4, "n_embd": 1152, "n_inner": 6912, "embedding_scale": 1152**0.5},
    "opt-125m": {"n_positions": 2048, "vocab_size": 50_272, "activation": "relu"},
    "nanochat-d20": {
        "n_layer": 20, "n_head": 10, "n_embd": 1280, "n_positions": 2048, "vocab_size": 65_536, "norm": "rms_unweighted",
        "embedding_norm": True, "layer_norm_epsilon": 1e-6, "positions": "rotary", "qk_norm": "head", "activation": "squared_relu",
        "logit_softcap": 15.0, "tie_word_embeddings": False, **_NO_BIAS,
    },
    # Counted, not built. GPT-1: Radford et al. 2018. GPT-3: Brown et al. 2020, arXiv:2005.14165, table 2.1, where XL has 24 heads of 128,
    # which 2,048 channels do not give; its 1.3 billion weights are those of 16. Falcon: Almazrouei et al. 2023, arXiv:2311.16867.
    "gpt1": {"n_positions": 512, "vocab_size": 40_478, "norm_position": "post"},
    "gpt3-small": {**_GPT_3, "n_layer": 12, "n_head": 12, "n_embd": 768},
    "gpt3-medium": {**_GPT_3, "n_layer": 24, "n_head": 16, "n_embd": 1024},
    "gpt3-large": {**_GPT_3, "n_layer": 24, "n_head": 16, "n_embd": 1536},
    "gpt3-xl": {**_GPT_3, "n_layer": 24, "n_head": 16, "n_embd": 2048},
    "gpt3-2.7b": {**_GPT_3, "n_layer": 32, "n_head": 32, "n_embd": 2560},
    "gpt3-6.7b": {**_GPT_3, "n_layer": 32, "n_head": 32, "n_embd": 4096},
    "gpt3-13b": {**_GPT_3, "n_layer": 40, "n_head": 40, "n_embd": 5140, "head_size": 128},
    "gpt3": {**_GPT_3, "n_layer": 96, "n_head": 96, "n_embd": 12_288},
    "llama-2-7b": {**_LLAMA_2, "n_layer": 32, "n_head": 32, "n_embd": 4096, "n_inner": 11_008},
    "llama-2-13b": {**_LLAMA_2, "n_layer": 40, "n_head": 40, "n_embd": 5120, "n_inner": 13_824},
    "llama-2-70b": {**_LLAMA_2, "n_layer": 80, "n_head": 64, "n_kv_head": 8, "n_embd": 8192, "n_inner": 28_672},
    "falcon-7b": {**_FALCON, "n_layer": 32, "n_head": 71, "n_kv_head": 1, "n_embd": 4544, "shared_norm": True},
    "falcon-40b": {**_FALCON, "n_layer": 60, "n_head": 128, "n_kv_head": 8, "n_embd": 8192},
    "falcon-180b": {**_FALCON, "n_layer": 80, "n_head": 232, "n_kv_head": 8, "n_embd": 14_848},
}  # fmt: skip
