"""The command `attnzoo timm`."""

import argparse
from importlib.util import find_spec


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line."""
    command = commands.add_parser(
        "timm",
        help="list networks of timm that take a block as their attention layer",
        description="Build timm's networks with the block, on the meta device and without weights, "
        "and list those that use it, each as soon as it is built.",
    )
    command.add_argument("name", metavar="NAME")
    command.add_argument("models", nargs="?", default="*", help="glob of timm's model names")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the networks; returns the exit status."""
    if find_spec("timm") is None:
        raise ValueError('attnzoo timm needs the bench extra: pip install "attnzoo[bench]"')
    from ..integrations.timm import compatible_models

    models = []
    for found in compatible_models(options.name, options.models):
        models.append(found.model)
        line = f"{found.model:<40}{found.call:<34}{found.blocks:>3} blocks"
        print(f"{line} {found.parameters:>12,} parameters", flush=True)
    if not models:
        raise ValueError(
            f"no network of timm that matches {options.models!r} takes {options.name!r} as its "
            f"attention layer; use attnzoo.insert(net, where, {options.name!r}, example_input=x)"
        )
    count = f"{len(models)} network{'s' * (len(models) != 1)}"
    print(f"{count}; layer = attnzoo.attn_layer({options.name!r})")
    return 0
