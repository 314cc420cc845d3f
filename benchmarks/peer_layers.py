"""Peers of the blocks: layers of timm and of fightingcv-attention, and the authors' code.

Each entry says how a peer is built so that it computes what our block does at a given config, and
how its weights are renamed. Only comparable layers are listed: timm's `se`, `cbam` and `coord`
round their hidden widths up to multiples of 8 by default, which is disabled here. Authors' modules
that no longer import under current versions of torch and timm (Pyraformer, SwiftFormer), need a GPU
(mamba, CARAFE, SAPA) or mmcv (GCNet) to import, or stop at an undefined name (BAM), are left out.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from attnzoo.registry import Inputs
from attnzoo.testing.inputs import call

Config = Mapping[str, Any]
State = Mapping[str, Tensor]
PACKAGES = ("timm", "fightingcv-attention")


class MissingPeerError(RuntimeError):
    """A peer's code is not installed, or does not load."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A class of another library that computes the same as a block."""

    block: str
    source: str  # a package of `PACKAGES`, or the authors' repository, OWNER/NAME
    module: str  # its import path, or the file inside the repository
    name: str
    keywords: Callable[[Config], dict[str, Any]]
    ours: Config = field(default_factory=dict)  # config with which our block computes the same
    keys: Callable[[State], State] = dict  # their state dict under the authors' names
    call: Callable[[nn.Module, Inputs], Any] = call

    def build(self, config: Config, upstream: Path | None) -> nn.Module:
        """The peer at our block's config. Raises MissingPeerError if its code is not available."""
        if self.source in PACKAGES:
            cls = getattr(_package(self.source, self.module), self.name)
        else:
            if upstream is None:
                raise MissingPeerError(f"{self.source} needs --upstream DIR with its checkout")
            folder = upstream / self.source.split("/")[1]
            cls = getattr(_checkout(folder, self.module, self.source), self.name)
        built: nn.Module = cls(**self.keywords(config))
        return built

    def version(self, upstream: Path | None) -> str:
        """The package's version, or the commit of the checkout if it is a git repository."""
        if self.source in PACKAGES:
            return version(self.source)
        folder = (upstream or Path()) / self.source.split("/")[1]
        head = folder / ".git" / "HEAD"
        text = head.read_text().strip() if head.is_file() else ""
        target = folder / ".git" / text.removeprefix("ref: ")
        if text.startswith("ref: "):
            text = target.read_text().strip() if target.is_file() else ""
        return text[:7] or "commit unknown"


def _package(package: str, module: str) -> Any:
    try:
        version(package)
        return importlib.import_module(module)
    except (PackageNotFoundError, ImportError) as error:
        raise MissingPeerError(
            f'{package} does not load ({error}): pip install "attnzoo[peers]"'
        ) from error


def _checkout(folder: Path, file: str, source: str) -> Any:
    """A module of a checkout, by its path; it can import other modules of the checkout."""
    path = folder / file
    if not path.is_file():
        raise MissingPeerError(
            f"{path} does not exist: git clone https://github.com/{source} {folder}"
        )
    name = file.removesuffix(".py").replace("/", ".")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise MissingPeerError(f"{path} is not a Python module")
    module = importlib.util.module_from_spec(spec)
    with _importable(folder):
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # importing it may raise anything
            raise MissingPeerError(
                f"{path} does not load: {type(error).__name__}: {error}"
            ) from error
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Put the checkout on the path, and remove its modules from `sys.modules` afterwards.

    Several repositories have a package named `models` or `src`, which must not be confused.
    """
    before = dict(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - set(before):
            places = [getattr(sys.modules[name], "__file__", None)]
            places += [*getattr(sys.modules[name], "__path__", ())]
            if any(place and Path(place).is_relative_to(folder) for place in places):
                del sys.modules[name]


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


def _ltae(block: nn.Module, inputs: Inputs) -> Any:
    return block(inputs["x"], batch_positions=inputs["positions"])


def _hidden(config: Config, least: int = 1) -> int:
    return int(max(least, config["c"] // config["reduction"]))


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
        call=_ltae,
    ),
)
