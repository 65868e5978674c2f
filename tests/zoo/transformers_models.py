"""Small models of families of transformers: their classes and configurations, and what they are called with."""

import torch

TEXT = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = TEXT | {"num_key_value_heads": 2}
OLD = {
    "vocab_size": 96,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 40,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SEQUENCES = {
    "vocab_size": 96,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
VISION = {"image_size": 16, "patch_size": 4, "hidden_size": 32, "intermediate_size": 64} | {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
SPEECH = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (16, 16),
    "conv_stride": (3, 2),
    "conv_kernel": (5, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.0,
    "layerdrop": 0.0,
    "vocab_size": 32,
}


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def tokens(*shape, below=96):
    return torch.randint(3, below, shape, generator=torch.Generator().manual_seed(1))


def words():
    return {"input_ids": tokens(3, 8)}


def masked():
    return {"input_ids": tokens(3, 8), "attention_mask": (torch.arange(8) < torch.tensor([[8], [6], [3]])).long()}


def pairs():
    return {"input_ids": tokens(3, 8), "decoder_input_ids": tokens(3, 5)}


def images(size=16, batch=4):
    return lambda: {"pixel_values": noise(batch, 3, size, size)}


FAMILIES = {
    "albert": ("AlbertForMaskedLM", TEXT | {"embedding_size": 16}, masked),
    "bart": ("BartForConditionalGeneration", SEQUENCES, pairs),
    "beit": ("BeitForImageClassification", VISION | {"use_relative_position_bias": True}, images()),
    "bert": ("BertForMaskedLM", TEXT, masked),
    "bloom": ("BloomForCausalLM", {"vocab_size": 96, "hidden_size": 32, "n_layer": 2, "n_head": 4}, masked),
    "clip": (
        "CLIPModel",
        {
            "text_config": TEXT,
            "vision_config": VISION,
            "projection_dim": 16,
        },
        lambda: masked() | images(16, 2)(),
    ),
    "convnext": (
        "ConvNextForImageClassification",
        {"hidden_sizes": (8, 16, 24, 32), "depths": (1, 1, 1, 1)},
        images(32),
    ),
    "deberta_v2": (
        "DebertaV2ForMaskedLM",
        TEXT
        | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "share_att_key": True},
        masked,
    ),
    "dinov2": (
        "Dinov2Model",
        {
            "image_size": 16,
            "patch_size": 4,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "mlp_ratio": 2,
        },
        images(),
    ),
    "distilbert": (
        "DistilBertForMaskedLM",
        {
            "vocab_size": 96,
            "dim": 32,
            "hidden_dim": 64,
            "n_layers": 2,
            "n_heads": 4,
            "max_position_embeddings": 40,
            "sinusoidal_pos_embds": True,
        },
        masked,
    ),
    "electra": ("ElectraForPreTraining", TEXT | {"embedding_size": 16}, masked),
    "encodec": (
        "EncodecModel",
        {
            "num_filters": 4,
            "hidden_size": 16,
            "num_residual_layers": 1,
            "upsampling_ratios": [4, 2],
            "codebook_size": 16,
            "codebook_dim": 16,
            "num_lstm_layers": 1,
            "sampling_rate": 1000,
            "target_bandwidths": [1.0],
            "audio_channels": 1,
        },
        lambda: {"input_values": noise(2, 1, 64)},
    ),
    "falcon": (
        "FalconForCausalLM",
        {
            "vocab_size": 96,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        masked,
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        GROUPED | {"head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
        masked,
    ),
    "gpt2": ("GPT2LMHeadModel", OLD, masked),
    "gpt_neox": ("GPTNeoXForCausalLM", TEXT, masked),
    "llama": ("LlamaForCausalLM", GROUPED, masked),
    "longformer": ("LongformerForMaskedLM", TEXT | {"attention_window": 4}, masked),
    "mamba": (
        "MambaForCausalLM",
        {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
        words,
    ),
    "mamba2": (
        "Mamba2ForCausalLM",
        {
            "vocab_size": 96,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "state_size": 4,
            "num_heads": 8,
            "head_dim": 8,
            "n_groups": 2,
            "chunk_size": 4,
        },
        words,
    ),
    "marian": ("MarianMTModel", SEQUENCES, pairs),
    "mistral": ("MistralForCausalLM", GROUPED | {"sliding_window": 4}, masked),
    "mixtral": ("MixtralForCausalLM", GROUPED | {"num_local_experts": 4}, masked),
    "opt": (
        "OPTForCausalLM",
        {k: v for k, v in TEXT.items() if k != "intermediate_size"} | {"ffn_dim": 64, "word_embed_proj_dim": 16},
        masked,
    ),
    "patchtst": (
        "PatchTSTForPrediction",
        {
            "num_input_channels": 2,
            "context_length": 16,
            "prediction_length": 4,
            "patch_length": 4,
            "patch_stride": 4,
            "d_model": 32,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "ffn_dim": 64,
        },
        lambda: {"past_values": noise(3, 16, 2)},
    ),
    "perceiver": (
        "PerceiverModel",
        {
            "num_latents": 8,
            "d_latents": 32,
            "d_model": 24,
            "num_self_attends_per_block": 2,
            "num_self_attention_heads": 4,
            "num_cross_attention_heads": 4,
        },
        lambda: {"inputs": noise(2, 9, 24)},
    ),
    "phi": ("PhiForCausalLM", TEXT, masked),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        GROUPED | {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
        masked,
    ),
    "resnet": (
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": (16, 24, 32, 48), "depths": (1, 1, 1, 1)},
        images(32),
    ),
    "roberta": ("RobertaForSequenceClassification", TEXT, masked),
    "rwkv": (
        "RwkvForCausalLM",
        {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "context_length": 16},
        words,
    ),
    "segformer": (
        "SegformerForSemanticSegmentation",
        {
            "hidden_sizes": (8, 16, 24, 32),
            "depths": (1, 1, 1, 1),
            "num_attention_heads": (1, 2, 2, 4),
            "decoder_hidden_size": 24,
        },
        images(32),
    ),
    "swin": (
        "SwinForImageClassification",
        {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4},
        images(),
    ),
    "t5": (
        "T5ForConditionalGeneration",
        {
            "vocab_size": 96,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
        },
        pairs,
    ),
    "videomae": (
        "VideoMAEForVideoClassification",
        VISION | {"num_frames": 4, "tubelet_size": 2},
        lambda: {"pixel_values": noise(2, 4, 3, 16, 16)},
    ),
    "vit": ("ViTForImageClassification", VISION, images()),
    "wav2vec2": ("Wav2Vec2ForCTC", SPEECH, lambda: {"input_values": noise(2, 120)}),
    "whisper": (
        "WhisperForConditionalGeneration",
        {k: v for k, v in SEQUENCES.items() if k != "max_position_embeddings"}
        | {"num_mel_bins": 8, "max_source_positions": 12, "max_target_positions": 20},
        lambda: {"input_features": noise(2, 8, 24), "decoder_input_ids": tokens(2, 5)},
    ),
    "xlnet": ("XLNetLMHeadModel", {"vocab_size": 96, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}, masked),
}
"""Name: (class, configuration, what makes the arguments of a call)."""

NO_MATRICES = {
    "beit": ("*.cls_token", "*.relative_position_bias_table"),
    "dinov2": ("*.cls_token", "*.mask_token"),
    "mamba": ("*.A_log",),
    "rwkv": ("*.time_mix_*",),
    "swin": ("*.relative_position_bias_table",),
    "vit": ("*.cls_token",),
    "xlnet": ("*.mask_emb", "*.r_[rsw]_bias"),
}
"""Parameters with several axes that are no weight matrices: vectors, biases, and tables whose start has a meaning."""

FAN_IN = {
    "bert": {"*.attention.self.query.weight": 32, "*.layer.?.output.dense.weight": 64},
    "gpt2": {"*.attn.c_attn.weight": 32, "*.mlp.c_fc.weight": 32, "*.mlp.c_proj.weight": 128},
    "mixtral": {"*.experts.gate_up_proj": 32, "*.experts.down_proj": 64},
    "xlnet": {"*.rel_attn.[qkvro]": 32},
}
"""How many inputs weights have, by name."""
