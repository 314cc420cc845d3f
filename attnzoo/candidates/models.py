"""Networks by name, for the command line: timm:NAME, torchvision:NAME, hf:CONFIG.json, ..."""

import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..testing.api import shaped
from ..testing.targets import attribute_of, import_named
from ..validation import messages


def load(text: str) -> nn.Module:
    """The network that a text names, with random weights.

    Args:
        text: `timm:resnet18`, `torchvision:resnet18`, `hf:config.json` (a configuration of
            transformers) or `package.module:function`, a function or class without arguments.

    Raises:
        ValueError: it names none, or its package is not installed.
    """
    source, _, name = text.partition(":")
    if not name:
        raise ValueError(
            f"{text!r} names no network; take timm:resnet18, torchvision:resnet18, hf:config.json "
            "or package.module:function"
        )
    torch.manual_seed(0)
    if source in LOADERS:
        return LOADERS[source](name)
    made = attribute_of(import_named(source), name)()
    if not isinstance(made, nn.Module):
        raise ValueError(f"{text} returns {messages.shown(made)}, no nn.Module")
    return made


def example(text: str) -> Any:
    """Inputs from text: "2x3x64x64", several with commas, or names with shapes.

    "input_ids=2x16:1000" are integers below 1000, for the argument of that name.
    """
    if "=" not in text and ":" not in text:
        return shaped(text)
    parts = [part.strip() for part in text.split(",")]
    if any("=" not in part for part in parts):
        made = tuple(map(_tensor, parts))
        return made if len(made) > 1 else made[0]
    pairs = [part.partition("=") for part in parts]
    return {name.strip(): _tensor(value) for name, _, value in pairs}


def _tensor(text: str) -> Tensor:
    shape, colon, below = text.partition(":")
    made: Tensor = shaped(shape)
    if not colon:
        return made
    if not below.isdigit() or int(below) < 1:
        raise ValueError(f"{text!r} must be sizes and a number of integers, such as 2x16:1000")
    return torch.randint(int(below), made.shape, generator=torch.Generator().manual_seed(0))


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ValueError(f"{name} is not installed: pip install {name}") from None


def _timm(name: str) -> nn.Module:
    timm = _package("timm")
    if not timm.is_model(name):
        raise ValueError(
            f"timm has no network {name!r}{messages.nearest(name, timm.list_models())}"
        )
    model: nn.Module = timm.create_model(name, pretrained=False)
    return model


def _torchvision(name: str) -> nn.Module:
    models = _package("torchvision").models
    known = models.list_models()
    if name not in known:
        raise ValueError(f"torchvision has no network {name!r}{messages.nearest(name, known)}")
    backbone = {"weights_backbone": None} if "weights_backbone" in _keywords(models, name) else {}
    model: nn.Module = models.get_model(name, weights=None, **backbone)
    return model


def _keywords(models: Any, name: str) -> set[str]:
    return set(inspect.signature(models.get_model_builder(name)).parameters)


def _transformers(name: str) -> nn.Module:
    transformers = _package("transformers")
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"{name} is no file; give the config.json of a network of transformers")
    config = json.loads(path.read_text(encoding="utf-8"))
    kind = config.pop("model_type", None)
    if kind not in transformers.CONFIG_MAPPING:
        raise ValueError(f"{name} has model_type={kind!r}, which transformers does not know")
    made = transformers.AutoConfig.for_model(kind, **config)
    for architecture in made.architectures or ():
        if hasattr(transformers, architecture):
            model: nn.Module = getattr(transformers, architecture)(made)
            return model
    found: nn.Module = transformers.AutoModel.from_config(made)
    return found


LOADERS = {"timm": _timm, "torchvision": _torchvision, "hf": _transformers}
