"""The registry under many threads: registering a name once, and building at the same time."""

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import attnzoo
from attnzoo import registry

THREADS, ROUNDS = 8, 10


@pytest.fixture(autouse=True)
def _scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restores the registry after a test that registers blocks."""
    monkeypatch.setattr(registry, "_blocks", dict(registry._catalogue()))


def fresh() -> type[nn.Module]:
    class Scaled(nn.Module):
        """Scales its input."""

        def __init__(self, c: int, *, factor: float = 2.0) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: Tensor) -> Tensor:
            return self.factor * x

    return Scaled


def together(work: Callable[[int], None]) -> list[BaseException]:
    """Run `work` in all threads at once; what they raised."""
    barrier, errors = threading.Barrier(THREADS), []

    def run(i: int) -> None:
        barrier.wait()
        try:
            work(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.mark.parametrize("attempt", range(ROUNDS))
def test_only_one_thread_registers_a_name(attempt: int) -> None:
    classes = [fresh() for _ in range(THREADS)]
    errors = together(lambda i: void(attnzoo.register("contested", layout="image")(classes[i])))
    assert len(errors) == THREADS - 1
    assert all("a block named 'contested' is registered already" in str(e) for e in errors)
    winner = registry.find("contested").cls
    assert sum(cls is winner for cls in classes) == 1
    for cls in classes:  # only the registered class is changed
        assert hasattr(cls.__init__, "checked") == (cls is winner)


def test_one_class_under_many_names() -> None:
    cls = fresh()
    assert not together(lambda i: void(attnzoo.register(f"name_{i}", layout="image")(cls)))
    for i in range(THREADS):
        assert attnzoo.build(f"name_{i}", c=4, factor=3).factor == 3.0
    assert not hasattr(cls.__init__.__wrapped__, "checked")  # wrapped once, not per name


def test_building_while_other_threads_register() -> None:
    names = sorted(registry._catalogue())[:4]
    built: dict[tuple[int, str], int] = {}

    def work(i: int) -> None:
        for turn in range(ROUNDS):
            attnzoo.register(f"mine_{i}_{turn}", layout="image")(fresh())
            assert f"mine_{i}_{turn}" in attnzoo.names()
            for name in names:
                block = attnzoo.build(name, **registry.find(name).example, device="meta")
                built[i, name] = sum(p.numel() for p in block.parameters())
            if i % 2:
                with pytest.raises(attnzoo.UnknownBlockError):
                    attnzoo.build(f"nobody_{turn}", c=4)

    assert together(work) == []
    assert len(attnzoo.names(text="scales its input")) == THREADS * ROUNDS
    for name in names:
        form = registry.find(name).closed_form(None, **registry.find(name).example)
        assert form is not None
        assert {built[i, name] for i in range(THREADS)} == {form.params}


def test_threads_do_not_share_devices_and_dtypes() -> None:
    def work(i: int) -> None:
        device, dtype = (("meta", torch.float16), ("cpu", torch.float64))[i % 2]
        for _ in range(ROUNDS):
            weight = attnzoo.build("se", 16, device=device, dtype=dtype).fc1.weight
            assert (weight.device.type, weight.dtype) == (device, dtype)

    assert together(work) == []


@pytest.mark.parametrize(
    "options",
    [{"example": {"channels": 4}}, {"example": {"c": "4"}}, {"layout": "features"}, {"layout": 3},
     {"family": "animal"}, {"example": [1]}, {"limits": {"flying": "no"}}, {"inputs": 3}],
)  # fmt: skip
def test_a_failed_registration_changes_nothing(options: dict[str, object]) -> None:
    cls, before = fresh(), dict(registry._catalogue())
    init = cls.__init__
    with pytest.raises((ValueError, TypeError)) as caught:
        attnzoo.register("mine", **{"layout": "image", **options})(cls)  # type: ignore[arg-type]
    assert len(str(caught.value)) > 20
    assert registry._blocks == before
    assert cls.__init__ is init
    attnzoo.register("mine", layout="image")(cls)
    assert attnzoo.build("mine", 4).factor == 2.0


def void(_: object) -> None:
    """Discard the value."""
