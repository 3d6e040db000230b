"""Tiny random configurations of the transformers library, by both PyTorch exporters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor

from models.zoo.torch_export import Dynamic, Pick, Sample, net

Inputs = Callable[[], dict[str, Tensor]]
TOKENS: Dynamic = {0: "batch", 1: "sequence"}
BATCH: Dynamic = {0: "batch"}
VOCABULARY = 50


def tokens(*names: str, length: int = 9) -> Inputs:
    """Token ids, and where it is named a mask of the same shape."""

    def make() -> dict[str, Tensor]:
        made = {}
        for name in names or ("input_ids",):
            mask = name.endswith("mask")
            made[name] = torch.ones(2, length, dtype=torch.int64) if mask else (
                torch.randint(3, VOCABULARY - 1, (2, length))
            )  # fmt: skip
        return made

    return make


def image(side: int = 32, name: str = "pixel_values", channels: int = 3) -> Inputs:
    return lambda: {name: torch.randn(2, channels, side, side)}


def wave(*shape: int, name: str = "input_values") -> Inputs:
    return lambda: {name: torch.randn(2, *shape)}


def _dynamic(name: str, value: Tensor) -> Dynamic:
    return TOKENS if value.dtype == torch.int64 and value.ndim == 2 else BATCH


def _make(
    model: str, config: str, settings: dict[str, Any], inputs: Inputs, outputs: int,
    fixed: dict[str, Any], nested: dict[str, dict[str, Any]],
) -> Sample:  # fmt: skip
    made = {**settings, **nested}
    configured = getattr(transformers, config)(**made)
    configured._attn_implementation = fixed.get("attention", "eager")
    module = getattr(transformers, model)._from_config(
        configured, attn_implementation=fixed.get("attention", "eager")
    )
    module.config.return_dict = True
    example = inputs()
    extra = {k: v for k, v in fixed.items() if k != "attention"}
    picked = Pick(module, list(example), outputs, **extra)
    return Sample(picked, example, {n: _dynamic(n, v) for n, v in example.items()})


def add(
    name: str, model: str, inputs: Inputs, *variants: str, config: str = "", outputs: int = 1,
    fixed: dict[str, Any] | None = None, nested: dict[str, dict[str, Any]] | None = None,
    **settings: Any,
) -> None:  # fmt: skip
    """One model of the library.

    Args:
        config: its configuration class; by default the first word of the model's.
        fixed: arguments of every call; ``attention`` chooses the implementation (default eager).
    """
    if not config:
        config = getattr(transformers, model).config_class.__name__
    make = partial(_make, model, config, settings, inputs, outputs, fixed or {}, nested or {})
    net(*variants, name=name, source="hf")(make)


NO_CACHE: dict[str, Any] = {"use_cache": False}
MASKED = tokens("input_ids", "attention_mask")
ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
DECODER = dict(**ENCODER, num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}

# First: what a user is likeliest to bring.
add("vit", "ViTForImageClassification", image(), **VISION)
add("bert", "BertForSequenceClassification", MASKED, **ENCODER)
add("gpt2", "GPT2LMHeadModel", MASKED, fixed=NO_CACHE, vocab_size=VOCABULARY, n_embd=32, n_layer=2,
    n_head=4, n_positions=40)  # fmt: skip
add("llama", "LlamaForCausalLM", MASKED, fixed=NO_CACHE, **DECODER)
add("swin", "SwinForImageClassification", image(), image_size=32, patch_size=2, embed_dim=16,
    depths=[2, 2], num_heads=[2, 4], window_size=4)  # fmt: skip
add("convnext", "ConvNextForImageClassification", image(), hidden_sizes=[16, 24, 32, 40],
    depths=[1, 1, 2, 1])  # fmt: skip
add("t5-encoder", "T5EncoderModel", MASKED, vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48,
    num_layers=2, num_heads=4)  # fmt: skip
add("t5", "T5ForConditionalGeneration", tokens("input_ids", "decoder_input_ids"), fixed=NO_CACHE,
    vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)  # fmt: skip

# Encoders of text.
add("bert-sdpa", "BertModel", MASKED, fixed={"attention": "sdpa"}, **ENCODER)
add("bert-mlm", "BertForMaskedLM", MASKED, **ENCODER)
add("roberta", "RobertaForSequenceClassification", MASKED, pad_token_id=1, **ENCODER)
add("distilbert", "DistilBertForSequenceClassification", MASKED, vocab_size=VOCABULARY, dim=32,
    n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=40)  # fmt: skip
add("albert", "AlbertModel", MASKED, embedding_size=16, **ENCODER)
add("electra", "ElectraModel", MASKED, embedding_size=16, **ENCODER)
add("mobilebert", "MobileBertModel", MASKED, embedding_size=16, intra_bottleneck_size=16,
    vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=48)  # fmt: skip
add(
    "squeezebert",
    "SqueezeBertModel",
    MASKED,
    embedding_size=32,
    q_groups=2,
    k_groups=2,
    v_groups=2,
    post_attention_groups=1,
    intermediate_groups=2,
    output_groups=2,
    **ENCODER,
)
add("deberta-v2", "DebertaV2Model", MASKED, relative_attention=True, position_buckets=8,
    pos_att_type=["c2p", "p2c"], norm_rel_ebd="layer_norm", share_att_key=True,
    position_biased_input=False, **ENCODER)  # fmt: skip
add("deberta", "DebertaModel", MASKED, relative_attention=True, pos_att_type=["c2p", "p2c"],
    **ENCODER)  # fmt: skip
add("mpnet", "MPNetModel", MASKED, **ENCODER)
add("funnel", "FunnelModel", MASKED, vocab_size=VOCABULARY, d_model=32, n_head=4, d_head=8,
    d_inner=48, block_sizes=[1, 1], num_decoder_layers=1)  # fmt: skip
add("xlnet", "XLNetModel", tokens("input_ids"), vocab_size=VOCABULARY, d_model=32, n_layer=2,
    n_head=4, d_inner=48)  # fmt: skip
add("xlm-roberta", "XLMRobertaModel", MASKED, pad_token_id=1, **ENCODER)
add("fnet", "FNetModel", tokens("input_ids"), **{k: v for k, v in ENCODER.items()
    if k != "num_attention_heads"})  # fmt: skip
add("nystromformer", "NystromformerModel", tokens("input_ids", length=16), num_landmarks=4,
    segment_means_seq_len=16, **ENCODER)  # fmt: skip
add("convbert", "ConvBertModel", MASKED, embedding_size=32, conv_kernel_size=3, head_ratio=2,
    **ENCODER)  # fmt: skip
add("modernbert", "ModernBertModel", MASKED, pad_token_id=0, global_attn_every_n_layers=2,
    local_attention=4, **ENCODER)  # fmt: skip
add("longformer", "LongformerModel", tokens("input_ids", length=16), attention_window=4,
    pad_token_id=1, **ENCODER)  # fmt: skip
add("roformer", "RoFormerModel", MASKED, embedding_size=32, **ENCODER)
add("ibert", "IBertModel", MASKED, pad_token_id=1, **ENCODER)
add("xmod", "XmodModel", MASKED, default_language="en_XX", pad_token_id=1, **ENCODER)
add("megatron-bert", "MegatronBertModel", MASKED, **ENCODER)
add("rembert", "RemBertModel", MASKED, input_embedding_size=16, output_embedding_size=24,
    **ENCODER)  # fmt: skip
add("layoutlm", "LayoutLMModel", MASKED, **ENCODER)

# Decoders.
add("gpt-neox", "GPTNeoXForCausalLM", MASKED, fixed=NO_CACHE, rotary_pct=0.5, **ENCODER)
add("gpt-neo", "GPTNeoForCausalLM", MASKED, fixed=NO_CACHE, vocab_size=VOCABULARY, hidden_size=32,
    num_layers=2, num_heads=4, intermediate_size=48, max_position_embeddings=40, window_size=4,
    attention_types=[[["global", "local"], 1]])  # fmt: skip
add("gptj", "GPTJForCausalLM", MASKED, fixed=NO_CACHE, vocab_size=VOCABULARY, n_embd=32, n_layer=2,
    n_head=4, n_positions=40, rotary_dim=4)  # fmt: skip
add("codegen", "CodeGenForCausalLM", MASKED, fixed=NO_CACHE, vocab_size=VOCABULARY, n_embd=32,
    n_layer=2, n_head=4, n_positions=40, rotary_dim=4)  # fmt: skip
add("gpt-bigcode", "GPTBigCodeForCausalLM", MASKED, fixed=NO_CACHE, vocab_size=VOCABULARY,
    n_embd=32, n_layer=2, n_head=4, n_positions=40, multi_query=True)  # fmt: skip
add("opt", "OPTForCausalLM", MASKED, fixed=NO_CACHE, vocab_size=VOCABULARY, hidden_size=32,
    num_hidden_layers=2, num_attention_heads=4, ffn_dim=48, max_position_embeddings=40,
    word_embed_proj_dim=32)  # fmt: skip
add("bloom", "BloomForCausalLM", MASKED, fixed=NO_CACHE, vocab_size=VOCABULARY, hidden_size=32,
    n_layer=2, n_head=4)  # fmt: skip
add("llama-sdpa", "LlamaModel", MASKED, fixed={**NO_CACHE, "attention": "sdpa"}, **DECODER)
add("mistral", "MistralForCausalLM", MASKED, fixed=NO_CACHE, sliding_window=4, **DECODER)
add("mixtral", "MixtralForCausalLM", MASKED, fixed=NO_CACHE, num_local_experts=4,
    num_experts_per_tok=2, **DECODER)  # fmt: skip
add("qwen2", "Qwen2ForCausalLM", MASKED, fixed=NO_CACHE, **DECODER)
add("qwen3", "Qwen3ForCausalLM", MASKED, fixed=NO_CACHE, head_dim=8, **DECODER)
add("phi", "PhiForCausalLM", MASKED, fixed=NO_CACHE, **DECODER)
add("phi3", "Phi3ForCausalLM", MASKED, fixed=NO_CACHE, **DECODER)
add("gemma", "GemmaForCausalLM", MASKED, fixed=NO_CACHE, head_dim=8, **DECODER)
add("gemma2", "Gemma2ForCausalLM", MASKED, fixed=NO_CACHE, head_dim=8, **DECODER)
add("falcon", "FalconForCausalLM", MASKED, fixed=NO_CACHE, vocab_size=VOCABULARY, hidden_size=32,
    num_hidden_layers=2, num_attention_heads=4, multi_query=True)  # fmt: skip
add("falcon-new", "FalconForCausalLM", MASKED, fixed=NO_CACHE, vocab_size=VOCABULARY,
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, new_decoder_architecture=True,
    num_kv_heads=2)  # fmt: skip
add("falcon-alibi", "FalconForCausalLM", MASKED, fixed=NO_CACHE, vocab_size=VOCABULARY,
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True,
    multi_query=False)  # fmt: skip
add("mpt", "MptForCausalLM", MASKED, fixed=NO_CACHE, vocab_size=VOCABULARY, d_model=32, n_heads=4,
    n_layers=2, expansion_ratio=2, max_seq_len=40)  # fmt: skip
add("stablelm", "StableLmForCausalLM", MASKED, fixed=NO_CACHE, **DECODER)
add("olmo", "OlmoForCausalLM", MASKED, fixed=NO_CACHE, **DECODER)
add("olmo2", "Olmo2ForCausalLM", MASKED, fixed=NO_CACHE, **DECODER)
add("cohere", "CohereForCausalLM", MASKED, fixed=NO_CACHE, **DECODER)
add("starcoder2", "Starcoder2ForCausalLM", MASKED, fixed=NO_CACHE, **DECODER)
add("granite", "GraniteForCausalLM", MASKED, fixed=NO_CACHE, **DECODER)
add("glm", "GlmForCausalLM", MASKED, fixed=NO_CACHE, head_dim=8, **DECODER)
add("biogpt", "BioGptForCausalLM", MASKED, fixed=NO_CACHE, **ENCODER)
add("xglm", "XGLMForCausalLM", MASKED, fixed=NO_CACHE, vocab_size=VOCABULARY, d_model=32,
    ffn_dim=48, num_layers=2, attention_heads=4)  # fmt: skip
add("mamba", "MambaForCausalLM", tokens("input_ids"), fixed=NO_CACHE, vocab_size=VOCABULARY,
    hidden_size=32, num_hidden_layers=2, state_size=4)  # fmt: skip
add("rwkv", "RwkvForCausalLM", tokens("input_ids"), fixed=NO_CACHE, vocab_size=VOCABULARY,
    hidden_size=32, num_hidden_layers=2, attention_hidden_size=32)  # fmt: skip

# Encoder and decoder.
SEQ2SEQ = {"vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
               "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
               "decoder_ffn_dim": 48, "max_position_embeddings": 40, "pad_token_id": 1}  # fmt: skip
PAIR = tokens("input_ids", "decoder_input_ids")
add("bart", "BartForConditionalGeneration", PAIR, fixed=NO_CACHE, **SEQ2SEQ)
add("mbart", "MBartForConditionalGeneration", PAIR, fixed=NO_CACHE, **SEQ2SEQ)
add("marian", "MarianMTModel", PAIR, fixed=NO_CACHE, decoder_start_token_id=3, **SEQ2SEQ)
add("pegasus", "PegasusForConditionalGeneration", PAIR, fixed=NO_CACHE, **SEQ2SEQ)
add("m2m100", "M2M100ForConditionalGeneration", PAIR, fixed=NO_CACHE, **SEQ2SEQ)
add("mt5", "MT5EncoderModel", MASKED, vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48,
    num_layers=2, num_heads=4)  # fmt: skip
add("switch", "SwitchTransformersEncoderModel", tokens("input_ids"), vocab_size=VOCABULARY,
    d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, num_experts=2)  # fmt: skip

# Images.
add("deit", "DeiTForImageClassification", image(), **VISION)
add("beit", "BeitForImageClassification", image(), use_relative_position_bias=True, **VISION)
add("data2vec-vision", "Data2VecVisionModel", image(), use_shared_relative_position_bias=True,
    **VISION)  # fmt: skip
add("dinov2", "Dinov2Model", image(), mlp_ratio=2, use_swiglu_ffn=False,
    **{k: v for k, v in VISION.items() if k != "intermediate_size"})  # fmt: skip
add("swinv2", "Swinv2ForImageClassification", image(), image_size=32, patch_size=2, embed_dim=16,
    depths=[2, 2], num_heads=[2, 4], window_size=4)  # fmt: skip
add("donut-swin", "DonutSwinModel", image(), image_size=32, patch_size=2, embed_dim=16,
    depths=[2, 2], num_heads=[2, 4], window_size=4)  # fmt: skip
add("convnextv2", "ConvNextV2ForImageClassification", image(), hidden_sizes=[16, 24, 32, 40],
    depths=[1, 1, 2, 1])  # fmt: skip
add("mobilevit", "MobileViTForImageClassification", image(64), image_size=64, patch_size=2,
    hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 24, 24, 24, 32],
    num_attention_heads=4)  # fmt: skip
add("mobilevitv2", "MobileViTV2ForImageClassification", image(64), image_size=64,
    base_attn_unit_dims=[16, 24, 32], n_attn_blocks=[1, 1, 1], width_multiplier=0.25)  # fmt: skip
add("segformer", "SegformerForSemanticSegmentation", image(64), num_encoder_blocks=4,
    depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1, 2, 2, 4],
    sr_ratios=[8, 4, 2, 1], decoder_hidden_size=24)  # fmt: skip
add("poolformer", "PoolFormerForImageClassification", image(64), hidden_sizes=[8, 16, 24, 32],
    depths=[1, 1, 1, 1])  # fmt: skip
add("regnet", "RegNetForImageClassification", image(64), embedding_size=8,
    hidden_sizes=[16, 24, 32, 40], depths=[1, 1, 2, 1], groups_width=8)  # fmt: skip
add("resnet", "ResNetForImageClassification", image(64), embedding_size=8,
    hidden_sizes=[16, 24, 32, 40], depths=[1, 1, 2, 1])  # fmt: skip
add("efficientnet", "EfficientNetForImageClassification", image(64), image_size=64,
    width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320)  # fmt: skip
add("mobilenetv1", "MobileNetV1ForImageClassification", image(64), image_size=64,
    depth_multiplier=0.25)  # fmt: skip
add("mobilenetv2", "MobileNetV2ForImageClassification", image(64), image_size=64,
    depth_multiplier=0.25)  # fmt: skip
add("levit", "LevitForImageClassification", image(64), image_size=64, hidden_sizes=[16, 24, 32],
    num_attention_heads=[2, 3, 4], depths=[1, 1, 1], key_dim=[8, 8, 8])  # fmt: skip
add("pvt", "PvtForImageClassification", image(64), image_size=64, hidden_sizes=[8, 16, 24, 32],
    depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 3, 4])  # fmt: skip
add(
    "pvt-v2",
    "PvtV2ForImageClassification",
    image(64),
    image_size=64,
    hidden_sizes=[8, 16, 24, 32],
    depths=[1, 1, 1, 1],
    num_attention_heads=[1, 2, 3, 4],
)
add("cvt", "CvtForImageClassification", image(64), embed_dim=[8, 16, 24], num_heads=[1, 2, 3],
    depth=[1, 1, 2])  # fmt: skip
add(
    "convnext-backbone",
    "ConvNextBackbone",
    image(),
    hidden_sizes=[16, 24, 32, 40],
    depths=[1, 1, 1, 1],
)
add("focalnet", "FocalNetForImageClassification", image(64), image_size=64, embed_dim=16,
    depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 64, 128])  # fmt: skip
add("hiera", "HieraModel", image(64), image_size=[64, 64], embed_dim=16, depths=[1, 1, 1, 1],
    num_heads=[1, 2, 4, 8])  # fmt: skip
add("efficientnet-model", "EfficientNetModel", image(64), image_size=64, width_coefficient=0.5,
    depth_coefficient=0.3, hidden_dim=640)  # fmt: skip
add("bit", "BitForImageClassification", image(64), embedding_size=32,
    hidden_sizes=[32, 64, 96, 128], depths=[1, 1, 1, 1], num_groups=4)  # fmt: skip
add("glpn", "GLPNForDepthEstimation", image(64), depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32],
    num_attention_heads=[1, 2, 2, 4], decoder_hidden_size=16)  # fmt: skip
add("dpt", "DPTForDepthEstimation", image(64), backbone_out_indices=[0, 1, 2, 3], image_size=64,
    hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=48, patch_size=16,
    neck_hidden_sizes=[8, 16, 24, 32], fusion_hidden_size=16)  # fmt: skip
add("upernet", "UperNetForSemanticSegmentation", image(64), hidden_size=16,
    auxiliary_in_channels=24,
    backbone_config=transformers.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1],
    out_features=["stage1", "stage2", "stage3", "stage4"]), pool_scales=[1, 2],
    auxiliary_channels=16)  # fmt: skip
add("swin2sr", "Swin2SRForImageSuperResolution", image(16), image_size=16, embed_dim=24,
    depths=[2, 2], num_heads=[2, 2], window_size=4, upscale=2)  # fmt: skip
add("vit-mae", "ViTMAEModel", image(), fixed={"noise": torch.rand(2, 16)}, **VISION)
add("ijepa", "IJepaModel", image(), **VISION)
add("siglip-vision", "SiglipVisionModel", image(), **VISION)
add("textnet", "TextNetForImageClassification", image(64), stem_out_channels=8,
    hidden_sizes=[8, 16, 24, 32, 40])  # fmt: skip

# Detection.
DETR = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_queries": 5,
}
BACKBONE = transformers.ResNetConfig(
    embedding_size=8, hidden_sizes=[16, 24, 32, 40], depths=[1, 1, 1, 1],
    out_features=["stage2", "stage3", "stage4"],
)  # fmt: skip
LAST = transformers.ResNetConfig(
    embedding_size=8, hidden_sizes=[16, 24, 32, 40], depths=[1, 1, 1, 1], out_features=["stage4"]
)
add("detr", "DetrForObjectDetection", image(64), outputs=2, use_timm_backbone=False,
    backbone_config=LAST, **DETR)  # fmt: skip
add("conditional-detr", "ConditionalDetrForObjectDetection", image(64), outputs=2,
    use_timm_backbone=False, backbone_config=LAST, **DETR)  # fmt: skip
add("deformable-detr", "DeformableDetrForObjectDetection", image(64), outputs=2,
    use_timm_backbone=False, backbone_config=BACKBONE, num_feature_levels=3, **DETR)  # fmt: skip
add("yolos", "YolosForObjectDetection", image(), outputs=2, **{**VISION, "image_size": [32, 32]},
    num_detection_tokens=5)  # fmt: skip
add("rt-detr-resnet", "RTDetrResNetBackbone", image(64), embedding_size=8,
    hidden_sizes=[16, 24, 32, 40], depths=[1, 1, 1, 1])  # fmt: skip

# Text and image.
TEXT_CLIP = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 20,
    "eos_token_id": 2,
    "bos_token_id": 0,
    "pad_token_id": 1,
}
add("clip-vision", "CLIPVisionModelWithProjection", image(), projection_dim=16, **VISION)
add("clip-text", "CLIPTextModelWithProjection", MASKED, projection_dim=16, **TEXT_CLIP)
add("clip", "CLIPModel", lambda: {**tokens("input_ids", "attention_mask")(), **image()()},
    outputs=2, nested={"text_config": TEXT_CLIP, "vision_config": dict(VISION)},
    projection_dim=16)  # fmt: skip
add("blip-vision", "BlipVisionModel", image(), **VISION)

# Sound.
add("whisper", "WhisperForConditionalGeneration", lambda: {**wave(8, 60, name="input_features")(),
    **tokens("decoder_input_ids")()}, fixed=NO_CACHE, num_mel_bins=8, max_source_positions=30,
    max_target_positions=40, decoder_start_token_id=3, suppress_tokens=None,
    **{k: v for k, v in SEQ2SEQ.items() if k != "max_position_embeddings"})  # fmt: skip
SOUND = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (16, 16),
    "conv_stride": (4, 2),
    "conv_kernel": (8, 3),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "num_feat_extract_layers": 2,
}
add("wav2vec2", "Wav2Vec2ForCTC", wave(400), **SOUND)
add("wav2vec2-layer", "Wav2Vec2Model", wave(400), feat_extract_norm="layer",
    do_stable_layer_norm=True, **SOUND)  # fmt: skip
add("hubert", "HubertModel", wave(400), **SOUND)
add("wavlm", "WavLMModel", wave(400), **SOUND)
add("sew", "SEWModel", wave(400), squeeze_factor=2, **SOUND)
add("data2vec-audio", "Data2VecAudioModel", wave(400), **SOUND)
add("ast", "ASTModel", wave(24, 16), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=48, patch_size=8, frequency_stride=8, time_stride=8, max_length=24,
    num_mel_bins=16)  # fmt: skip
add("univnet", "UnivNetModel", wave(20, 100, name="input_features"))
add("encodec", "EncodecModel", wave(1, 320))
add("vits", "VitsModel", tokens("input_ids"))

# Other.
add("perceiver", "PerceiverModel", wave(12, 24, name="inputs"), d_model=24, d_latents=32,
    num_latents=6, num_blocks=1, num_self_attends_per_block=2, num_self_attention_heads=4,
    num_cross_attention_heads=4)  # fmt: skip
add("patchtst", "PatchTSTModel", wave(32, 3, name="past_values"), num_input_channels=3,
    context_length=32, patch_length=8, patch_stride=8, d_model=32, num_hidden_layers=2,
    num_attention_heads=4, ffn_dim=48)  # fmt: skip
add("openai-gpt", "OpenAIGPTModel", tokens("input_ids"), vocab_size=VOCABULARY, n_embd=32,
    n_layer=2, n_head=4, n_positions=40)  # fmt: skip
