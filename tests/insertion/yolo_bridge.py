"""The bridge against the real ultralytics; `test_yolo.py` runs it in an environment of its own."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import ultralytics
import yaml
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel

import attnzoo
import attnzoo.integrations.ultralytics
from attnzoo.registry import find

IMAGE = [
    name
    for name in attnzoo.names(layout="image")
    if find(name).family not in ("network", "upsampler")  # those change the map
]
PLACE = 10  # behind the backbone's last layer


@pytest.fixture(autouse=True)
def bridge() -> Any:
    attnzoo.integrations.ultralytics.enable()
    yield
    attnzoo.integrations.ultralytics.disable()


def network(*row: Any) -> dict[str, Any]:
    """yolov8n's yaml for three classes with one more row behind the backbone."""
    shipped = Path(ultralytics.__file__).parent / "cfg/models/v8/yolov8.yaml"
    net: dict[str, Any] = yaml.safe_load(shipped.read_text())
    net |= {"scale": "n", "nc": 3}
    net["backbone"].append(list(row))

    def moved(source: Any) -> Any:
        if isinstance(source, list):
            return [moved(one) for one in source]
        return source + 1 if source >= PLACE else source

    net["head"] = [[moved(row[0]), *row[1:]] for row in net["head"]]
    return net


@pytest.mark.parametrize("name", [n for n in IMAGE if find(n).family != "upsampler"])
def test_every_image_block_is_named_in_a_yaml_and_trains(name: str) -> None:
    model = DetectionModel(network(-1, 1, name, []), verbose=False)
    block = model.model[PLACE]
    assert type(block) is find(name).cls
    assert block.type == f"attnzoo.{name}"
    alone = attnzoo.build(name, 256)
    assert block.state_dict().keys() == alone.state_dict().keys()
    model.train()
    sum(out.square().mean() for out in leaves(model(torch.randn(2, 3, 64, 64)))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


@pytest.mark.parametrize("arguments", [[1024], [1024, {"reduction": 8}]])
def test_rows_as_recipes_write_them(arguments: list[Any]) -> None:
    block = DetectionModel(network(-1, 1, "CBAM", arguments), verbose=False).model[PLACE]
    assert type(block) is find("cbam").cls
    assert block.c == 256
    assert block.fc1.weight.shape[0] == (32 if len(arguments) > 1 else 16)


def test_fusing_keeps_inserted_blocks_or_is_refused() -> None:
    for where, refused in (("model.[24]", False), ("model.2.cv1", False), ("model.1.bn", True),
                           ("model.1.conv", True)):  # fmt: skip
        model = DetectionModel(network(-1, 1, "SE", []), verbose=False).eval()
        x = torch.randn(1, 3, 64, 64)
        attnzoo.insert(model, where, "simam", example_input=x)
        before = model(x)[0]
        if refused:
            with pytest.raises(ValueError, match=r"fuse\(\) folds .*attnzoo\.remove"):
                model.fuse(verbose=False)
            torch.testing.assert_close(model(x)[0], before, atol=0, rtol=0)
            continue
        count = sum(type(module) is find("simam").cls for module in model.modules())
        model.fuse(verbose=False)
        assert sum(type(module) is find("simam").cls for module in model.modules()) == count
        torch.testing.assert_close(model(x)[0], before, atol=1e-3, rtol=1e-3)


def leaves(value: Any) -> list[torch.Tensor]:
    """All floating tensors of the nested training output."""
    if isinstance(value, torch.Tensor):
        return [value] if value.requires_grad else []
    parts = value.values() if isinstance(value, dict) else value
    return [leaf for part in parts for leaf in leaves(part)]


@pytest.mark.parametrize("spelling", ["CBAM", "cbam", "attnzoo.cbam"])
def test_a_block_goes_by_its_class_or_its_name(spelling: str) -> None:
    net = network(-1, 1, spelling, [{"reduction": 8, "kernel_size": 3}])
    block = DetectionModel(net, verbose=False).model[PLACE]
    assert type(block) is find("cbam").cls
    alone = attnzoo.build("cbam", 256, reduction=8, kernel_size=3)
    assert [p.shape for p in block.parameters()] == [p.shape for p in alone.parameters()]


def test_repeats_stack_blocks() -> None:
    net = network(-1, 6, "SE", [])  # 6 repeats at yolov8n's depth of a third
    stack = DetectionModel(net, verbose=False).model[PLACE]
    assert [type(block) for block in stack] == [find("se").cls] * 2


def test_it_is_the_block_that_runs() -> None:
    model = DetectionModel(network(-1, 1, "SE", []), verbose=False).eval()
    seen = {}

    def note(module: torch.nn.Module, args: tuple[torch.Tensor], out: torch.Tensor) -> None:
        seen.update(x=args[0], out=out)

    handle = model.model[PLACE].register_forward_hook(note)
    model(torch.randn(1, 3, 64, 64))
    handle.remove()
    alone = attnzoo.build("se", 256)
    alone.load_state_dict(model.model[PLACE].state_dict())
    assert torch.equal(seen["out"], alone(seen["x"]))


def test_names_of_ultralytics_stay_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class SE(torch.nn.Identity):
        pass

    monkeypatch.setattr("ultralytics.nn.tasks.SE", SE, raising=False)
    assert type(DetectionModel(network(-1, 1, "SE", []), verbose=False).model[PLACE]) is SE
    net = network(-1, 1, "attnzoo.se", [])
    assert type(DetectionModel(net, verbose=False).model[PLACE]) is find("se").cls


@pytest.mark.parametrize(
    ("row", "error", "words"),
    [
        ((-1, 1, "Cbam", []), ValueError, "ultralytics has no layer 'Cbam'.*did you mean 'cbam'"),
        ((-1, 1, "C2ff", [256]), KeyError, "ultralytics has no layer 'C2ff', and no block"),
        (
            (-1, 1, "CBAM", [1024, 16]),
            ValueError,
            r"\[1024, 16\] must be \[\], the channels.*reduction=16",
        ),
        ((-1, 1, "CBAM", [{"reducton": 8}]), TypeError, "did you mean 'reduction'"),
        ((-1, 1, "CBAM", [{"reduction": 512}]), ValueError, "reduction=512"),
        ((-1, 1, "ltae", []), ValueError, "takes image_series or sequence; .* image block: agent"),
        ((-1, 1, "relu_linear", [{"c_out": 8}]), ValueError, "turns 256 channels into 8"),
        (([-1, 6], 1, "SE", []), ValueError, r"follows one layer, not from=\[-1, 6\]"),
    ],
)
def test_a_wrong_row_is_refused_in_words(
    row: tuple[Any, ...], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        DetectionModel(network(*row), verbose=False)


def test_the_recipe_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs/yolo.md").read_text()
    blocks = dict(re.findall(r"```(yaml|python)\n(.*?)```", page, re.DOTALL))
    (tmp_path / "yolov8n-cbam.yaml").write_text(blocks["yaml"])
    monkeypatch.chdir(tmp_path)
    exec(blocks["python"], {})
    assert "<class 'attnzoo.blocks.cbam.CBAM'>" in capsys.readouterr().out


def test_disabled_and_never_enabled_are_the_same() -> None:
    attnzoo.integrations.ultralytics.enable()
    attnzoo.integrations.ultralytics.disable()
    attnzoo.integrations.ultralytics.disable()
    with pytest.raises(KeyError, match="CBAM"):
        DetectionModel(network(-1, 1, "CBAM", []), verbose=False)


def test_training_saves_a_checkpoint_that_loads_without_the_bridge(tmp_path: Path) -> None:
    """From a yaml file through the public `YOLO` class: one epoch on four generated images."""
    (tmp_path / "net.yaml").write_text(yaml.safe_dump(network(-1, 1, "CBAM", [])))
    data = dataset(tmp_path)
    model = YOLO(tmp_path / "net.yaml")
    model.train(
        data=data, epochs=1, imgsz=64, batch=2, device="cpu", workers=0, plots=False, amp=False,
        project=str(tmp_path / "runs"), name="one", val=False, verbose=False,
    )  # fmt: skip
    (checkpoint,) = (tmp_path / "runs/one/weights").glob("last.pt")
    script = (
        "import sys, torch; from ultralytics import YOLO\n"
        f"model = YOLO({str(checkpoint)!r})\n"
        f"assert type(model.model.model[{PLACE}]).__module__ == 'attnzoo.blocks.cbam'\n"
        "model.predict(torch.rand(1, 3, 64, 64), verbose=False)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)


def dataset(folder: Path) -> Path:
    """Four images of noise with one box each, in the layout ultralytics reads."""
    import cv2
    import numpy

    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    random = numpy.random.default_rng(0)
    for i in range(4):
        image = random.integers(0, 255, (64, 64, 3), dtype=numpy.uint8)
        cv2.imwrite(str(folder / f"images/{i}.png"), image)
        (folder / f"labels/{i}.txt").write_text(f"{i % 3} 0.5 0.5 0.4 0.4\n")
    data = {"path": str(folder), "train": "images", "val": "images", "names": ["a", "b", "c"]}
    (folder / "data.yaml").write_text(yaml.safe_dump(data))
    return folder / "data.yaml"
