"""`attnzoo.survey`: ratios of times, places, budgets, training, and what is left as it was."""

import copy
import csv
import io
import itertools
import json
import math
import time

import pytest
import torch
import torchvision
from torch import nn

import attnzoo
from attnzoo import registry
from attnzoo.candidates import budget, models, places, sampling
from attnzoo.candidates.training import Learning
from attnzoo.cli import main


class Net(nn.Module):
    """Two residual branches that end in a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)) for _ in range(2)
        )
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for branch in self.branches:
            x = torch.relu(x + branch(x))
        return self.head(self.drop(x).mean((2, 3)))


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
QUICK = {"example_input": X, "seconds": 0.01}


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def own_registry(monkeypatch):
    """Forgets what the test registers."""

    monkeypatch.setattr(registry, "_blocks", dict(registry._catalogue()))


def work(times: int):
    a = torch.randn(128, 128)
    return lambda: [a @ a for _ in range(times)]


def test_ratios_are_those_of_the_work():
    ratio = sampling.compared(work(10), work(20), 0.2)
    assert 1.7 < ratio.value < 2.3
    assert ratio.low <= ratio.value <= ratio.high
    assert 0.7 < sampling.compared(work(10), work(10), 0.2).value < 1.4


@pytest.mark.parametrize(("rounds", "cut"), [(1, 0), (5, 0), (8, 1), (11, 2), (30, 10)])
def test_intervals_leave_out_as_many_as_their_coverage_allows(rounds, cut):
    assert sampling.dropped(rounds) == cut
    if rounds > 4:
        inside = sum(math.comb(rounds, i) for i in range(cut + 1, rounds - cut)) / 2**rounds
        wider = sum(math.comb(rounds, i) for i in range(cut + 2, rounds - cut - 1)) / 2**rounds
        assert inside >= 0.9 > wider


def test_rows_and_misfits():
    model = net()
    report = attnzoo.survey(model, "branches.*.1", names=["se", "eca", "mamba", "jbu"], **QUICK)
    assert {row.block for row in report.rows} == {"se", "eca"}
    assert {m.block for m in report.misfits} == {"mamba", "jbu"}
    assert report.paths == ("branches.0.1", "branches.1.1")
    block = attnzoo.build("se", c=16)
    row = next(row for row in report.rows if row.block == "se")
    assert row.parameters == 2 * sum(p.numel() for p in block.parameters())
    assert row.saved > 1
    assert report.parameters == sum(p.numel() for p in model.parameters())
    steps = [row.training.value for row in report.rows]
    assert steps == sorted(steps)
    text = str(report)
    assert "se" in text
    assert "mamba" in text
    assert "None" not in text


def test_ratios_tell_an_expensive_block(own_registry):
    @attnzoo.register("many_products", layout="image", family="channel", example={"c": 8})
    class Slow(nn.Module):
        def __init__(self, c: int) -> None:
            super().__init__()
            self.c = c

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a = x.flatten(2)
            for _ in range(30):
                a = a + 1e-9 * (a @ (a.mT @ a))
            return a.view_as(x)

    report = attnzoo.survey(net(), "stem", names=["many_products", "simam"], **QUICK)
    cheap, dear = report.rows
    assert (cheap.block, dear.block) == ("simam", "many_products")
    assert dear.inference.low > cheap.inference.high


def test_nothing_of_the_model_changes():
    model = net()
    model.head.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    state = torch.get_rng_state()
    attnzoo.survey(model, names=["se", "cbam"], data=batches, steps=2, seeds=2, **QUICK)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.state_dict().keys() == before.keys()
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_threads_are_those_asked_for_and_restored():
    seen = []

    class Asking(Net):
        def forward(self, x):
            seen.append(torch.get_num_threads())
            return super().forward(x)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        one = attnzoo.survey(Asking(), "stem", names=["eca"], **QUICK)
        assert seen[-1] == one.setting["threads"] == 1
        two = attnzoo.survey(Asking(), "stem", names=["eca"], threads=2, **QUICK)
        assert seen[-1] == two.setting["threads"] == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_ratios_hold_against_a_separate_measurement():
    x, places = torch.randn(2, 3, 64, 64), "layer[1-4].*.bn2"
    plain = torchvision.models.resnet18()
    names = ["eca", "cbam", "swiftformer"]
    report = attnzoo.survey(plain, places, example_input=x, names=names, seconds=2.0)
    for row in report.rows:
        other = copy.deepcopy(plain)
        attnzoo.insert(other, places, row.block, example_input=x)
        least = [math.inf, math.inf]
        for _ in range(40):
            for i, network in enumerate((plain, other)):
                network.train()
                start = time.thread_time()
                network(x).sum().backward()
                least[i] = min(least[i], time.thread_time() - start)
        ratio = least[1] / least[0]
        assert 0.85 * row.training.low < ratio < 1.15 * row.training.high, (row.block, ratio)


def test_interrupts_leave_the_rows_so_far():
    def stop(done: int, count: int, name: str) -> None:
        if done:
            raise KeyboardInterrupt

    report = attnzoo.survey(net(), "stem", names=["se", "eca", "bam"], progress=stop, **QUICK)
    assert [row.block for row in report.rows] == ["se"]
    assert report.pending == ("eca", "bam")
    assert "not reached: eca, bam" in str(report)


def test_blocks_that_raise_have_a_reason():
    x = torch.randn(1, 3, 1, 1)
    plain = nn.Sequential(nn.Conv2d(3, 32, 1))
    report = attnzoo.survey(plain, "0", names=["sknet"], example_input=x, seconds=0.01)
    assert "batch" in report.misfits[0].reason
    with pytest.raises(ValueError, match="train=False measures inference alone"):
        attnzoo.survey(net(), "stem", names=["se"], example_input=X[:1, :, :1, :1])


def test_formats_agree(tmp_path):
    report = attnzoo.survey(net(), "stem", names=["se", "mamba"], budget="parameters=1K", **QUICK)
    data = json.loads(report.to_json())
    assert data["rows"][0]["training"]["value"] == report.rows[0].training.value
    rows = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert float(rows[0]["inference"]) == report.rows[0].inference.value
    assert rows[1]["reason"] == report.misfits[0].reason
    assert rows[0]["inside"] == "yes"
    assert "| se |" in report.to_markdown()
    report.save(tmp_path)
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".csv", ".md", ".svg"}
    assert "<!-- se -->" in (tmp_path / "survey.svg").read_text()  # matplotlib's note of a text


def batches():
    while True:
        y = torch.randint(2, (4,))
        x = torch.randn(4, 3, 8, 8) + y[:, None, None, None]
        yield x, lambda out, y=y: nn.functional.cross_entropy(out, y)


def test_training_finds_a_block_that_harms(own_registry):
    @attnzoo.register("zeros", layout="image", family="channel", example={"c": 8})
    class Zeros(nn.Module):
        def __init__(self, c: int) -> None:
            super().__init__()
            self.c = c

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 0

    report = attnzoo.survey(
        net(), "drop", names=["zeros", "simam"], data=batches, steps=30, seeds=3, **QUICK
    )
    found = {row.block: row.learning for row in report.rows}
    assert found["zeros"].verdict == "higher"
    assert found["zeros"].loss == pytest.approx(math.log(2), abs=0.1)
    assert found["zeros"].plain_loss < found["zeros"].loss
    ratio = next(row.training.value for row in report.rows if row.block == "zeros")
    assert found["zeros"].matched_steps == round(30 * ratio)


def test_batches_that_end_are_refused():
    few = attnzoo.survey(
        net(), "stem", names=["se"], data=lambda: itertools.islice(batches(), 3), steps=5, **QUICK
    )
    assert "ended after 3 batches" in few.misfits[0].reason


@pytest.mark.parametrize(
    ("difference", "margin", "verdict"),
    [(-1.0, 0.5, "lower"), (1.0, 0.5, "higher"), (0.4, 0.5, "no difference seen")],
)
def test_verdicts_ask_for_more_than_the_margin(difference, margin, verdict):
    learning = Learning(1, 0, 0, 0, 0, 1, 0, 0, difference, margin)
    assert learning.verdict == verdict


@pytest.mark.parametrize(
    ("text", "key", "amount"),
    [
        ("latency=5%", "latency", 0.05),
        ("parameters=1M", "parameters", 1e6),
        ("macs=2.5K", "macs", 2500),
    ],
)
def test_budgets(text, key, amount):
    assert budget.parsed(text) == (budget.Limit(key, amount, text.endswith("%")),)


@pytest.mark.parametrize(
    "text", ["latency=5", "latency", "speed=5%", "parameters=-1", "parameters=1T", "macs=nan", ""]
)
def test_budgets_are_refused_in_words(text):
    with pytest.raises(ValueError, match="budget"):
        budget.parsed(text)


def test_limits_are_unsure_within_the_interval():
    limit = budget.Limit("latency", 0.05, True)
    assert limit.inside(0.03, 0.02, 0.04) == "yes"
    assert limit.inside(0.06, 0.055, 0.07) == "no"
    assert limit.inside(0.03, 0.02, 0.06) == "unsure"


class Forecaster(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder(self.embed(x))


def test_places_of_well_known_networks():
    image = torch.randn(1, 3, 32, 32)
    found = places.proposed(torchvision.models.resnet18(), image)
    branches = [f"layer{i}.{j}.bn2" for i in range(1, 5) for j in range(2)]
    assert list(found) == ["residual", "stage"]
    assert found["residual"] == tuple(branches)
    assert found["stage"] == ("layer1", "layer2", "layer3", "layer4")
    found = places.proposed(torchvision.models.mobilenet_v2(), image)
    assert found["residual"][0] == "features.3.conv.3"
    assert len(found["residual"]) == 10
    found = places.proposed(Forecaster(), torch.randn(2, 12, 3))
    assert next(iter(found)) == "temporal"
    assert found["temporal"] == ("encoder.layers.0", "encoder.layers.1")


def test_rules_are_asked_for_by_name():
    report = attnzoo.survey(net(), "auto:residual", names=["se"], **QUICK)
    assert report.rule == "residual"
    assert report.paths == ("branches.0.1", "branches.1.1")
    with pytest.raises(ValueError, match="residual, attention"):
        attnzoo.survey(net(), "auto:norms", **QUICK)
    with pytest.raises(ValueError, match=r"finds no place; residual"):
        attnzoo.survey(net(), "auto:attention", **QUICK)
    with pytest.raises(ValueError, match="give a path"):
        attnzoo.survey(nn.Sequential(nn.Linear(3, 3)), example_input=torch.randn(2, 3))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"names": "se"}, TypeError, r"names=\['se'\]"),
        ({"names": ["see"]}, ValueError, "se"),
        ({"where": "nothing"}, ValueError, "matches none"),
        ({"how": "beside"}, ValueError, "after"),
        ({"where": ["stem", "nothing"]}, ValueError, "nothing"),
        ({"steps": 0}, ValueError, "steps=0 must be"),
        ({"seeds": 2.5}, ValueError, "seeds=2.5 must be"),
        ({"budget": "training=5%", "train": False}, ValueError, "train=True"),
        ({"data": batches, "train": False}, ValueError, "train=True"),
        ({"device": "gpu"}, ValueError, "cuda"),
        ({"example_input": torch.randn(1, 5, 8, 8)}, ValueError, "does not take"),
    ],
)
def test_wrong_arguments_are_refused(options, error, words):
    with pytest.raises(error, match=words):
        attnzoo.survey(net(), **{"where": "auto", **QUICK, **options})


def test_paths_may_be_listed_and_blocks_configured():
    report = attnzoo.survey(net(), ["stem"], names={"se": {"reduction": 2}}, train=False, **QUICK)
    assert report.paths == ("stem",)
    assert report.rows[0].config == {"reduction": 2}
    assert report.rows[0].training is None
    assert report.rows[0].parameters == sum(
        p.numel() for p in attnzoo.build("se", c=16, reduction=2).parameters()
    )


@pytest.mark.slow
def test_compiled_networks_are_compared_too():
    report = attnzoo.survey(net(), "stem", names=["se"], compiled=True, **QUICK)
    assert report.rows[0].compiled_inference.value > 0
    assert report.rows[0].compiled_training.value > 0


def test_command_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "mynet_for_survey.py").write_text(
        "from torch import nn\ndef make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    common = ["survey", "mynet_for_survey:make", "1", "--input", "2x3x8x8", "--seconds", "0.01"]
    assert main([*common, "--names", "se", "--out", "out", "--budget", "latency=99%"]) == 0
    out = capsys.readouterr().out
    assert "se" in out
    assert (tmp_path / "out" / "survey.json").is_file()
    assert main([*common, "--names", "mamba", "--no-train"]) == 1
    assert main([*common, "--names", "see"]) == 2
    assert "se" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("resnet18", "timm:resnet18"),
        ("timm:resnet_18", "resnet18"),
        ("torchvision:resnet19", "resnet18"),
        ("hf:absent.json", "no file"),
        ("no_such_package:net", "cannot be imported"),
    ],
)
def test_networks_that_do_not_exist_are_refused(text, words):
    with pytest.raises(ValueError, match=words):
        models.load(text)


def test_networks_of_other_packages(tmp_path):
    pytest.importorskip("transformers")
    config = {"model_type": "segformer", "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}
    config |= {"num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 8}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config | {"architectures": ["SegformerForSemanticSegmentation"]}))
    model = models.load(f"hf:{path}").eval()
    assert type(model).__name__ == "SegformerForSemanticSegmentation"
    found = places.proposed(model, models.example("pixel_values=1x3x64x64"))
    assert len(found["attention"]) == 4


def test_example_inputs_from_text():
    x = models.example("2x3x8x8")
    assert x.shape == (2, 3, 8, 8)
    ids = models.example("input_ids=2x16:10,other=2x4")
    assert ids["input_ids"].dtype == torch.int64
    assert 0 <= int(ids["input_ids"].min()) <= int(ids["input_ids"].max()) < 10
    assert ids["other"].shape == (2, 4)
    for text in ("2x", "2x3:0", "a=2x3:b"):
        with pytest.raises(ValueError, match="2x"):
            models.example(text)
