"""Peers of the blocks: layers of timm and of fightingcv-attention, and the authors' code.

Each entry says how a peer is built so that it computes what our block does at a given config, and
how its weights are renamed. Only comparable layers are listed: timm's `se`, `cbam` and `coord`
round their hidden widths up to multiples of 8 by default, which is disabled here. Where no class of
the authors' is the whole block, their classes are joined here as their network joins them. mamba is
their module with their reference scan, since the fused one needs a GPU. Authors' modules that need
a GPU (CARAFE, SAPA) or mmcv (GCNet), or stop at an undefined name (BAM), are left out.
"""

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from attnzoo.registry import Inputs, InputSize

from peer import Config, Peer, State


def _renamed(**names: str) -> Callable[[State], State]:
    """A function that renames the first part of keys by `names`."""

    def keys(state: State) -> State:
        return {
            ".".join([names.get(key.split(".")[0], key.split(".")[0]), *key.split(".")[1:]]): value
            for key, value in state.items()
        }

    return keys


def _timm_cbam(state: State) -> State:
    """timm's keys; it stacks the mean before the maximum, the authors the other way round."""
    names = {
        "channel.fc1.": "ChannelGate.mlp.1.",
        "channel.fc2.": "ChannelGate.mlp.3.",
        "spatial.conv.": "SpatialGate.spatial.",
    }
    found = {
        theirs + key.removeprefix(ours): value
        for key, value in state.items()
        for ours, theirs in names.items()
        if key.startswith(ours)
    }
    found["SpatialGate.spatial.conv.weight"] = found["SpatialGate.spatial.conv.weight"].flip(1)
    return found


def _dated(block: nn.Module, inputs: Inputs) -> Any:
    return block(inputs["x"], batch_positions=inputs["positions"])


def _hidden(config: Config, least: int = 1) -> int:
    return int(max(least, config["c"] // config["reduction"]))


class _Agent(nn.Module):
    """Their attention on tokens, given the size of the map."""

    def __init__(self, module: ModuleType, config: Config, size: InputSize) -> None:
        super().__init__()
        self.attention = module.AgentAttention(
            config["c"],
            size.height * size.width,
            num_heads=config["heads"],
            qkv_bias=bool(config["qkv_bias"]),
            sr_ratio=config["sr_ratio"],
            agent_num=config["agents"],
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y: Tensor = self.attention(x.flatten(2).transpose(1, 2), h, w)
        return y.transpose(1, 2).reshape(b, c, h, w)


class _GatedInception(nn.Module):
    """The gated pair of MTGNN's `gtnet.forward`."""

    def __init__(self, module: ModuleType, config: Config, size: InputSize) -> None:
        super().__init__()
        widths = config["c"], config["c_out"] or config["c"], config["dilation"]
        self.filter_conv = module.dilated_inception(*widths)
        self.gate_conv = module.dilated_inception(*widths)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.filter_conv(x)) * torch.sigmoid(self.gate_conv(x))


class _MultiScaleGTU(nn.Module):
    """The tail of DSTAGNN's `DSTAGNN_block.forward`."""

    def __init__(self, module: ModuleType, config: Config, size: InputSize) -> None:
        super().__init__()
        c, length, kernels = config["c"], config["length"], config["kernels"]
        self.gtu3, self.gtu5, self.gtu7 = (module.GTU(c, 1, k) for k in kernels)
        steps = len(kernels) * (length + 1) - sum(kernels)
        self.fcmy = nn.Sequential(nn.Linear(steps, length), nn.Dropout(config["dropout"]))

    def forward(self, x: Tensor) -> Tensor:
        units = torch.cat([self.gtu3(x), self.gtu5(x), self.gtu7(x)], dim=-1)
        return torch.relu(x + self.fcmy(units))


class _Embedded(nn.Module):
    """Stands for Pyraformer's embedding: its input is embedded already."""

    def forward(self, x: Tensor, marks: None) -> Tensor:
        return x


def _pyraformer(module: ModuleType, config: Config, size: InputSize) -> nn.Module:
    c, quarter = config["c"], config["c"] // 4
    encoder: nn.Module = module.Encoder(
        SimpleNamespace(
            d_model=c,
            model="Pyraformer",
            window_size=list(config["windows"]),
            truncate=True,
            decoder="attention",
            input_size=size.steps,
            inner_size=config["inner"],
            device="cpu",
            use_tvm=False,
            d_inner_hid=config["d_inner"] or c,
            n_head=config["heads"],
            d_k=config["d_k"] or quarter,
            d_v=config["d_v"] or quarter,
            dropout=config["dropout"],
            n_layer=config["n_layers"],
            embed_type="DataEmbedding",
            enc_in=1,
            CSCM="Bottleneck_Construct",
            d_bottleneck=config["bottleneck"] or quarter,
        )
    )
    encoder.enc_embedding = _Embedded()
    return encoder


def _mamba(module: ModuleType, config: Config, size: InputSize) -> nn.Module:
    """Their module with the reference scan that its interface defines."""
    interface = module.mamba_inner_fn.__globals__
    module.selective_scan_fn = interface["selective_scan_ref"]  # type: ignore[attr-defined]
    built: nn.Module = module.Mamba(
        config["c"],
        d_state=config["state"],
        d_conv=config["conv"],
        expand=config["expand"],
        use_fast_path=False,
    )
    return built


FIGHTING = "fightingcv_attention.attention"
OPEN_AFF = "aff_pytorch/aff_net/fusion.py"
PEERS = (
    Peer(
        block="se",
        source="timm",
        module="timm.layers",
        name="SEModule",
        keywords=lambda c: {"channels": c["c"], "rd_channels": _hidden(c), "bias": c["bias"]},
        keys=_renamed(fc1="fc.0", fc2="fc.2"),
    ),
    Peer(
        block="cbam",
        source="timm",
        module="timm.layers.cbam",
        name="CbamModule",
        keywords=lambda c: {
            "channels": c["c"],
            "rd_channels": _hidden(c),
            "mlp_bias": True,
            "spatial_kernel_size": c["kernel_size"],
        },
        keys=_timm_cbam,
    ),
    Peer(
        block="coordatt",
        source="timm",
        module="timm.layers.coord_attn",
        name="CoordAttn",
        keywords=lambda c: {"channels": c["c"], "rd_channels": _hidden(c, 8), "bias": True},
    ),
    Peer(
        block="sknet",
        source="timm",
        module="timm.layers",
        name="SelectiveKernel",
        keywords=lambda c: {
            "in_channels": c["c"],
            "groups": c["groups"],
            "rd_channels": _hidden(c, c["min_dim"]),
            "split_input": False,
        },
    ),
    Peer(
        block="relu_linear",
        source="timm",
        module="timm.models.efficientvit_mit",
        name="LiteMLA",
        keywords=lambda c: {
            "in_channels": c["c"],
            "out_channels": c["c"],
            "dim": c["dim"],
            "heads_ratio": c["heads_ratio"],
            "scales": tuple(c["scales"]),
            "eps": c["eps"],
        },
    ),
    Peer(
        block="swiftformer",
        source="timm",
        module="timm.models.swiftformer",
        name="EfficientAdditiveAttention",
        keywords=lambda c: {"in_dims": c["c"], "token_dim": c["c"], "num_heads": c["heads"]},
    ),
    Peer(
        block="eca",
        source="timm",
        module="timm.layers",
        name="EcaModule",
        keywords=lambda c: {"channels": c["c"], "gamma": c["gamma"], "beta": c["b"]},
    ),
    Peer(
        block="se",
        source="fightingcv-attention",
        module=f"{FIGHTING}.SEAttention",
        name="SEAttention",
        keywords=lambda c: {"channel": c["c"], "reduction": c["reduction"]},
    ),
    Peer(
        block="cbam",
        source="fightingcv-attention",
        module=f"{FIGHTING}.CBAM",
        name="CBAMBlock",
        keywords=lambda c: {
            "channel": c["c"],
            "reduction": c["reduction"],
            "kernel_size": c["kernel_size"],
        },
    ),
    Peer(
        block="coordatt",
        source="fightingcv-attention",
        module=f"{FIGHTING}.CoordAttention",
        name="CoordAtt",
        keywords=lambda c: {"inp": c["c"], "oup": c["c"], "reduction": c["reduction"]},
    ),
    Peer(
        block="triplet",
        source="fightingcv-attention",
        module=f"{FIGHTING}.TripletAttention",
        name="TripletAttention",
        keywords=lambda c: {"no_spatial": not c["spatial"]},
    ),
    Peer(
        block="se",
        source="moskomule/senet.pytorch",
        module="senet/se_module.py",
        name="SELayer",
        keywords=lambda c: {"channel": c["c"], "reduction": c["reduction"]},
    ),
    Peer(
        block="cbam",
        source="Jongchan/attention-module",
        module="MODELS/cbam.py",
        name="CBAM",
        keywords=lambda c: {"gate_channels": c["c"], "reduction_ratio": c["reduction"]},
    ),
    Peer(
        block="coordatt",
        source="houqb/CoordAttention",
        module="coordatt.py",
        name="CoordAtt",
        keywords=lambda c: {"inp": c["c"], "oup": c["c"], "reduction": c["reduction"]},
    ),
    Peer(
        block="triplet",
        source="landskape-ai/triplet-attention",
        module="triplet_attention.py",
        name="TripletAttention",
        keywords=lambda c: {"no_spatial": not c["spatial"]},
    ),
    Peer(
        block="danet_position",
        source="junfu1115/DANet",
        module="encoding/nn/da_att.py",
        name="PAM_Module",
        keywords=lambda c: {"in_dim": c["c"]},
        ours={"reduction": 8},
    ),
    Peer(
        block="danet_channel",
        source="junfu1115/DANet",
        module="encoding/nn/da_att.py",
        name="CAM_Module",
        keywords=lambda c: {"in_dim": c["c"]},
    ),
    Peer(
        block="dia",
        source="ChenC1027/ADCD-Net",
        module="DIA_Module.py",
        name="DeformableAttention",
        keywords=lambda c: {"stride": 1, "distortionmode": c["modulated"]},
    ),
    Peer(
        block="relu_linear",
        source="mit-han-lab/efficientvit",
        module="efficientvit/models/nn/ops.py",
        name="LiteMLA",
        keywords=lambda c: {
            "in_channels": c["c"],
            "out_channels": c["c"],
            "dim": c["dim"],
            "heads_ratio": c["heads_ratio"],
            "scales": tuple(c["scales"]),
            "norm": (None, "bn2d"),
            "eps": c["eps"],
        },
        blank=("onnxsim",),
    ),
    Peer(
        block="eca",
        source="BangguWu/ECANet",
        module="models/eca_module.py",
        name="eca_layer",
        keywords=lambda c: {"channel": c["c"], "k_size": c["kernel_size"]},
        ours={"kernel_size": 3},
    ),
    Peer(
        block="simam",
        source="ZjjConan/SimAM",
        module="networks/attentions/simam_module.py",
        name="simam_module",
        keywords=lambda c: {"channels": c["c"], "e_lambda": c["e_lambda"]},
    ),
    Peer(
        block="psa",
        source="murufeng/EPSANet",
        module="models/epsanet.py",
        name="PSAModule",
        keywords=lambda c: {
            "inplans": c["c"],
            "planes": c["c_out"] or c["c"],
            "conv_kernels": list(c["kernels"]),
            "stride": c["stride"],
            "conv_groups": list(c["groups"]),
        },
    ),
    Peer(
        block="ms_cam",
        source="YimianDai/open-aff",
        module=OPEN_AFF,
        name="MS_CAM",
        keywords=lambda c: {"channels": c["c"], "r": c["reduction"]},
    ),
    Peer(
        block="aff",
        source="YimianDai/open-aff",
        module=OPEN_AFF,
        name="AFF",
        keywords=lambda c: {"channels": c["c"], "r": c["reduction"]},
    ),
    Peer(
        block="iaff",
        source="YimianDai/open-aff",
        module=OPEN_AFF,
        name="iAFF",
        keywords=lambda c: {"channels": c["c"], "r": c["reduction"]},
        ours={"shared_global": True},  # as in their file
    ),
    Peer(
        block="ltae",
        source="VSainteuf/utae-paps",
        module="src/backbones/ltae.py",
        name="LTAE2d",
        keywords=lambda c: {
            "in_channels": c["c"],
            "n_head": c["heads"],
            "d_k": c["d_k"],
            "mlp": list(c["mlp"]),
            "dropout": c["dropout"],
            "d_model": c["d_model"],
            "T": c["period"],
        },
        call=_dated,
    ),
    Peer(
        block="agent",
        source="LeapLabTHU/Agent-Attention",
        module="agent_transformer/models/agent_pvt.py",
        name="AgentAttention",
        make=_Agent,
        keys=lambda state: {key.removeprefix("attention."): t for key, t in state.items()},
        blank=("timm.models.layers", "timm.models.registry", "timm.models.vision_transformer"),
    ),
    Peer(
        block="swiftformer",
        source="Amshaker/SwiftFormer",
        module="models/swiftformer.py",
        name="EfficientAdditiveAttnetion",
        keywords=lambda c: {"in_dims": c["c"], "token_dim": c["c"], "num_heads": c["heads"]},
        ours={"layout": "sequence"},
        blank=(
            "timm.data",
            "timm.models.layers",
            "timm.models.layers.helpers",
            "timm.models.registry",
        ),
    ),
    Peer(
        block="mamba",
        source="state-spaces/mamba",
        module="mamba_ssm/modules/mamba_simple.py",
        name="Mamba",
        make=_mamba,
        blank=(
            "mamba_ssm",
            "mamba_ssm.ops.triton.layer_norm",
            "mamba_ssm.ops.triton.selective_state_update",
        ),
    ),
    Peer(
        block="trend_aware",
        source="guoshnBJTU/ASTGNN",
        module="model/ASTGNN.py",
        name="MultiHeadAttentionAwareTemporalContex_q1d_k1d",
        keywords=lambda c: {
            "nb_head": c["heads"],
            "d_model": c["c"],
            "num_of_weeks": 0,
            "num_of_days": 0,
            "num_of_hours": 1,
            "points_per_hour": 12,
            "kernel_size": c["kernel_size"],
        },
        call=lambda block, inputs: block(*[inputs["query"]] * 3),
        blank=("lib.utils",),
    ),
    Peer(
        block="pyraformer",
        source="ant-research/Pyraformer",
        module="pyraformer/Pyraformer_LR.py",
        name="Encoder",
        make=_pyraformer,
        call=lambda block, inputs: block(inputs["x"], None),
        blank=("torch.functional",),  # a name that it imports is gone
    ),
    Peer(
        block="ct_msa",
        source="yoshall/AirFormer",
        module="src/models/airformer.py",
        name="CT_MSA",
        keywords=lambda c: {
            "dim": c["c"],
            "depth": c["depth"],
            "heads": c["heads"],
            "window_size": c["window"],
            "mlp_dim": c["mlp_dim"] or 2 * c["c"],
            "num_time": c["length"],
            "device": "cpu",
        },
        axes=(0, 3, 1, 2),
        blank=("src.base.model", "src.layers.embedding"),
    ),
    Peer(
        block="m_gtu",
        source="SYLan2019/DSTAGNN",
        module="model/DSTAGNN_my.py",
        name="GTU",
        make=_MultiScaleGTU,
        axes=(0, 3, 1, 2),
        blank=("lib.utils",),
    ),
    Peer(
        block="dilated_inception",
        source="nnzhan/MTGNN",
        module="layer.py",
        name="dilated_inception",
        make=_GatedInception,
        ours={"gated": True, "padding": "valid"},
        axes=(0, 3, 1, 2),
    ),
    Peer(
        block="utae",
        source="VSainteuf/utae-paps",
        module="src/backbones/utae.py",
        name="UTAE",
        keywords=lambda c: {
            "input_dim": c["c"],
            "encoder_widths": list(c["encoder_widths"]),
            "decoder_widths": list(c["decoder_widths"] or c["encoder_widths"]),
            "out_conv": list(c["out_conv"]),
            "agg_mode": c["aggregate"],
            "encoder_norm": c["norm"],
            "n_head": c["heads"],
            "d_model": c["d_model"],
            "d_k": c["d_k"],
            "pad_value": c["pad_value"],
            "padding_mode": c["padding_mode"],
        },
        call=_dated,
    ),
)
