"""What a peer of a block is, and how its code is loaded: from a package or from a checkout."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from attnzoo.registry import Inputs, InputSize
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
    keywords: Callable[[Config], dict[str, Any]] = lambda config: {}
    make: Callable[[ModuleType, Config, InputSize], nn.Module] | None = None  # of several classes
    ours: Config = field(default_factory=dict)  # config with which our block computes the same
    keys: Callable[[State], State] = dict  # their state dict under the authors' names
    call: Callable[[nn.Module, Inputs], Any] = call
    axes: tuple[int, ...] = ()  # their layout as a permutation of ours; () where it is ours
    blank: tuple[str, ...] = ()  # modules that the file imports and the class does not need

    def build(self, config: Config, upstream: Path | None, size: InputSize) -> nn.Module:
        """The peer at our block's config, for inputs of that size.

        Raises MissingPeerError if its code is not available.
        """
        module = self._module(upstream)
        if self.make is not None:
            return self.make(module, config, size)
        built: nn.Module = getattr(module, self.name)(**self.keywords(config))
        return built

    def _module(self, upstream: Path | None) -> ModuleType:
        if self.source in PACKAGES:
            return _package(self.source, self.module)
        if upstream is None:
            raise MissingPeerError(f"{self.source} needs --upstream DIR with its checkout")
        folder = upstream / self.source.split("/")[1]
        return _checkout(folder, self.module, self.source, self.blank)

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


def _package(package: str, module: str) -> ModuleType:
    try:
        version(package)
        return importlib.import_module(module)
    except (PackageNotFoundError, ImportError) as error:
        raise MissingPeerError(
            f'{package} does not load ({error}): pip install "attnzoo[peers]"'
        ) from error


def _checkout(folder: Path, file: str, source: str, blank: Sequence[str] = ()) -> ModuleType:
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
    with _importable(folder), _blanked(blank, folder):
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # importing it may raise anything
            raise MissingPeerError(
                f"{path} does not load: {type(error).__name__}: {error}"
            ) from error
    return module


class _Nothing:
    """Stands for a function, decorator or base class of a blank module."""

    def __init__(self, *args: Any, **keywords: Any) -> None: ...


class _Blank(ModuleType):
    """Stands for a module that is missing or needs a GPU: each of its names is `_Nothing`.

    If it is a package of the checkout, its modules can still be imported.
    """

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name)
        self.__path__ = [str(folder / name.replace(".", "/"))]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing


@contextmanager
def _blanked(names: Sequence[str], folder: Path) -> Iterator[None]:
    """Put blank modules in place of these, and whatever was there back afterwards."""
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update({name: _Blank(name, folder) for name in names})
    try:
        yield
    finally:
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


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
        added = [name for name in sys.modules if name not in before]
        theirs = [name for name in added if _is_of(folder, sys.modules[name])]
        for name in theirs:  # after all were looked at: a package's path needs its parent
            del sys.modules[name]


def _is_of(folder: Path, module: ModuleType) -> bool:
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
    return any(place and Path(place).is_relative_to(folder) for place in places)
