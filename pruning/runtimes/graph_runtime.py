"""Runtimes that compile a model as one graph: what they have in common."""

import shutil
import tempfile
from abc import abstractmethod
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary, finalize

from pruning.runtimes.runtime import Call, Runtime, package_version
from pruning.runtimes.session import Session
from pruning.runtimes.workload import Phase, Workload

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from pruning.runtimes.graph import Graph


SESSIONS: "WeakKeyDictionary[PreTrainedModel, dict[str, Session]]" = WeakKeyDictionary()


@dataclass
class GraphRuntime(Runtime):
    """Whole models are compiled; a block is timed as a model of a few copies of it.

    One graph reads prompts, and tokens behind a KV cache, of any batch and length.
    """

    copies: ClassVar[int] = 4
    exports: ClassVar[bool] = True
    phases: ClassVar[tuple[Phase, ...]] = (Phase.prefill, Phase.decode, Phase.encode)
    package: ClassVar[str]  # on PyPI
    extra: ClassVar[str]  # of this package

    @property
    def version(self) -> str:
        """Return the version of the engine; ValueError where it is not installed."""
        return package_version(self.package, self.name, self.extra)

    @property
    def label(self) -> str:
        """Return the engine, its version, and what it computes in."""
        precision = getattr(self, "precision", "")  # a field of each, with values of its own
        return f"{self.name} {self.version.split('-')[0]}, {precision}"

    @abstractmethod
    def write(self, graph: "Graph", directory: Path) -> None:
        """Write what the engine serves to a directory that is there."""

    @abstractmethod
    def open(self, directory: Path) -> Session:
        """Load what `write` wrote."""

    def end_to_end(self, model: "PreTrainedModel", work: Workload) -> Call:
        """Return a call of a whole model, compiled."""
        from pruning.runtimes.graph import feed

        session, arrays = self.session(model), feed(model, work)
        return lambda: session(arrays)

    def block(self, model: "PreTrainedModel", work: Workload) -> Callable[..., Call]:
        """Return what makes a call of `copies` of a block, one behind the other."""
        from pruning.models.stacked import stacked

        def call(block: "nn.Module", index: int = 0) -> Call:
            # weights that are shared would be read from a cache
            copies = [deepcopy(block) for _ in range(self.copies)]
            return self.end_to_end(stacked(model, copies), work)

        return call

    def served(self, model: "PreTrainedModel", written: Path | None = None) -> Any:
        """Return what answers as the engine does; by what `export` wrote, if that is given."""
        from pruning.runtimes.served import Served

        return Served(model, self.open(written) if written else self.session(model))

    def session(self, model: "PreTrainedModel") -> Session:
        """Compile a model, once while it lives."""
        from pruning.runtimes.graph import exported

        known = SESSIONS.setdefault(model, {})
        if (key := repr(self)) not in known:
            files = Path(tempfile.mkdtemp(prefix="pruning-graph-"))
            try:
                self.write(exported(model), files)
                known[key] = self.open(files)
            except BaseException:
                shutil.rmtree(files, ignore_errors=True)
                raise
            finalize(known[key], shutil.rmtree, files, ignore_errors=True)
        return known[key]

    def export(self, model: "PreTrainedModel", tokenizer: Any, directory: Path) -> str:
        """Write what the engine serves to a directory of its name, whole or not at all."""
        from pruning.runtimes.graph import exported
        from pruning.system.files import whole_directory

        with whole_directory(directory / self.name) as partial:
            self.write(exported(model), partial)
        return self.name
