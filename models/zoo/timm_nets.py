"""Small timm models with random weights, by both PyTorch exporters.

timm imports torchvision at its start; where that is missing, a stub on PYTHONPATH will do.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import timm
import torch

from models.zoo.torch_export import Sample, net


def _make(name: str, side: int, settings: dict[str, Any]) -> Sample:
    module = timm.create_model(name, pretrained=False, num_classes=10, exportable=True, **settings)
    return Sample(module, {"x": torch.randn(2, 3, side, side)}, {"x": {0: "batch"}})


def add(name: str, side: int = 64, *variants: str, **settings: Any) -> None:
    net(*variants, name=name, source="timm")(partial(_make, name, side, settings))


def transformer(name: str, side: int = 32, **settings: Any) -> None:
    add(name, side, img_size=side, **settings)


SMALL_VIT: dict[str, Any] = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}

# Convolutional.
add("resnet10t")
add("resnet26d", layers=(1, 1, 1, 1))
add("resnext26ts")
add("seresnext26ts")
add("resnetv2_50", layers=(1, 1, 1, 1), channels=(32, 64, 96, 128), stem_chs=16)
add("resnetv2_50x1_bit")
add("res2net50_14w_8s", layers=(1, 1, 1, 1))
add("resnest14d")
add("skresnet18", layers=(1, 1, 1, 1))
add("ecaresnet26t", layers=(1, 1, 1, 1))
add("cspresnet50")
add("cspdarknet53")
add("darknet53")
add("densenet121", growth_rate=8, block_config=(2, 2, 2, 2))
add("dla46_c")
add("dla60_res2net")
add("dpn48b")
add("dm_nfnet_f0")
add("nf_resnet26")
add("eca_nfnet_l0")
add("ese_vovnet19b_slim")
add("ese_vovnet39b_evos")
add("efficientnet_b0")
add("efficientnet_cc_b0_4e", 64, "legacy17", "dynamo18")
add("efficientnetv2_rw_t")
add("mixnet_s")
add("mnasnet_small")
add("mobilenetv2_050")
add("mobilenetv3_small_050")
add("mobilenetv4_conv_small_050")
add("mobilenetv4_hybrid_medium")
add("mobileone_s0")
add("fbnetv3_b")
add("ghostnet_050")
add("ghostnetv2_100")
add("ghostnetv3_050")
add("hardcorenas_a")
add("hrnet_w18_small")
add("inception_v3", 96)
add("inception_next_atto")
add("lcnet_050")
add("legacy_senet154", layers=(1, 1, 1, 1))
add("regnetx_002")
add("regnety_002")
add("regnetz_005")
add("regnetv_040")
add("repghostnet_050")
add("repvgg_a0")
add("repvit_m0_9")
add("rexnet_100")
add("selecsls42")
add("semnasnet_050")
add("spnasnet_100")
add("starnet_s050")
add("tinynet_e")
add("tresnet_m", layers=(1, 1, 1, 1))
add("vgg11_bn")
add("vovnet39a")
add("xception41")
add("xcit_nano_12_p16_224", depth=2)
add("botnet26t_256")
add("lambda_resnet26t")
add("halonet26t", 128)
add("eca_halonext26ts", 128)
add("bat_resnext26ts", 64)
add("gcresnet33ts")
add("gernet_s")
add("haloregnetz_b", 128)
add("sebotnet33ts_256")
add("hgnet_tiny")
add("hgnetv2_b0")
add("convnext_atto", depths=(1, 1, 1, 1))
add("convnextv2_atto", depths=(1, 1, 1, 1))
add("convnext_atto_ols", depths=(1, 1, 1, 1))
add("edgenext_xx_small")
add("mambaout_femto", depths=(1, 1, 1, 1))
add("rdnet_tiny")
add("csatv2")
add("fasternet_t0")
add("shvit_s1")
add("efficientvit_b0")
add("efficientvit_m0", 64, img_size=64)
add("swiftformer_xs")
add("nextvit_small", depths=(1, 1, 2, 1))
add("fastvit_t8")
add("mobilevit_xxs")
add("mobilevitv2_050")
add("poolformer_s12", layers=(1, 1, 1, 1))
add("poolformerv2_s12", layers=(1, 1, 1, 1))
add("caformer_s18", depths=(1, 1, 1, 1))
add("convformer_s18", depths=(1, 1, 1, 1))
add("pvt_v2_b0")
add("davit_tiny", depths=(1, 1, 1, 1), embed_dims=(24, 48, 96, 192))
add("focalnet_tiny_srf", depths=(1, 1, 1, 1), embed_dim=24)
add("convmixer_768_32", dim=32, depth=2)
add("efficientformer_l1", 224)
add("efficientformerv2_s0", 64, img_size=64)

# Transformers and multilayer perceptrons on patches.
transformer("vit_tiny_patch16_224", **SMALL_VIT)
transformer("vit_base_patch16_clip_224", **SMALL_VIT)
transformer("vit_srelpos_small_patch16_224", **SMALL_VIT)
transformer("vit_relpos_small_patch16_224", **SMALL_VIT)
transformer("vit_small_r26_s32_224", 64, embed_dim=32, depth=2, num_heads=4)
transformer("vit_medium_patch16_reg4_gap_256", **SMALL_VIT)
transformer("vit_base_patch16_siglip_224", **SMALL_VIT)
transformer("vit_small_patch14_dinov2", **SMALL_VIT)
transformer("vit_base_patch16_xp_224", **SMALL_VIT)
transformer("vit_wee_patch16_reg1_gap_256", **SMALL_VIT)
transformer("samvit_base_patch16", 64, patch_size=8, embed_dim=32, depth=2, num_heads=4)
transformer("deit_tiny_distilled_patch16_224", **SMALL_VIT)
transformer("deit3_small_patch16_224", **SMALL_VIT)
transformer("beit_base_patch16_224", **SMALL_VIT)
transformer("beitv2_base_patch16_224", **SMALL_VIT)
transformer("eva02_tiny_patch14_224", **SMALL_VIT)
transformer("eva_giant_patch14_224", **SMALL_VIT)
transformer("cait_xxs24_224", patch_size=8, embed_dim=32, depth=2, num_heads=4)
transformer("convit_tiny", **{**SMALL_VIT, "embed_dim": 8, "depth": 3, "local_up_to_layer": 2})
transformer("coat_lite_tiny", 64)
transformer("crossvit_9_240", 240)
transformer("twins_pcpvt_small", 64, depths=(1, 1, 1, 1))
transformer("twins_svt_small", 64, depths=(1, 1, 2, 1), embed_dims=(16, 32, 64, 128),
            num_heads=(1, 2, 4, 8))  # fmt: skip
transformer("swin_tiny_patch4_window7_224", 56, depths=(2, 2), embed_dim=16, num_heads=(2, 4))
transformer("swinv2_tiny_window8_256", 64, depths=(2, 2), embed_dim=16, num_heads=(2, 4))
transformer("swinv2_cr_tiny_224", 56, depths=(2, 2), embed_dim=16, num_heads=(2, 4),
            window_size=7)  # fmt: skip
transformer("swin_s3_tiny_224", 56, depths=(1, 1), embed_dim=16, num_heads=(2, 4),
            window_size=(7, 7))  # fmt: skip
transformer("maxvit_rmlp_pico_rw_256", 64)
transformer("coatnet_pico_rw_224", 64)
transformer("coatnet_bn_0_rw_224", 64)
transformer("gcvit_xxtiny", 64)
transformer("hiera_tiny_224", 224, embed_dim=24, stages=(1, 1, 1, 1))
transformer("levit_128s", 224)
transformer("visformer_tiny", 64)
transformer("pit_ti_224", 224)
transformer("nest_tiny", 64)
transformer("mvitv2_tiny", 64, depths=(1, 1, 1, 1))
transformer("volo_d1_224", 64)
transformer("mixer_s32_224", 64)
transformer("gmixer_12_224", 64)
transformer("gmlp_ti16_224", 64)
transformer("resmlp_12_224", 64)
add("vitamin_small_224", 64, img_size=64)
add("tiny_vit_5m_224", 224)
add("flexivit_small", 32, img_size=32, **SMALL_VIT)
