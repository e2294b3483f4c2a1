"""Runtimes that compile a model as one graph: what they have in common."""

import shutil
import tempfile
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import finalize

from pruning.runtimes.loaded_models import LoadedModels
from pruning.runtimes.runtime import Call, Runtime, package_version
from pruning.runtimes.session import Session
from pruning.runtimes.workload import Phase, Workload

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pruning.runtimes.graph import Graph


COMPILED: LoadedModels[tuple[Session, Path]] = LoadedModels()  # what runs a model, and its files


@dataclass
class GraphRuntime(Runtime):
    """Whole models are compiled; a block is timed as a model of a few copies of it.

    One graph reads prompts, and tokens behind a KV cache, of any batch and length.
    """

    exports: ClassVar[bool] = True
    phases: ClassVar[tuple[Phase, ...]] = (Phase.prefill, Phase.decode, Phase.encode)
    package: ClassVar[str]  # on PyPI
    extra: ClassVar[str]  # of this package

    @property
    def version(self) -> str:
        """Return the version of the engine; ValueError where it is not installed."""
        return package_version(self.package, self.name, self.extra)

    def check(self, model: "PreTrainedModel", tokenizer: Any) -> None:
        """Raise ValueError where the engine is not installed, or the model is no single graph."""
        from pruning.models.sites import architecture

        super().check(model, tokenizer)
        if architecture(model).experts:
            raise ValueError(
                f"runtime={self.name}: which experts are read depends on the tokens, and a graph "
                "has no such choice: give runtime=torch, or a model without experts"
            )

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

    def copies(self, model: "PreTrainedModel") -> int:
        """Return of how many copies of a block a call of one consists."""
        return 4

    def block(self, model: "PreTrainedModel", work: Workload) -> Callable[..., Call]:
        """Return what makes a call of `copies` of a block, one behind the other."""
        from pruning.models.stacked import repeated

        copies = self.copies(model)
        return lambda block, index=0: self.end_to_end(repeated(model, block, copies), work)

    def served(self, model: "PreTrainedModel", written: Path | None = None) -> Any:
        """Return what answers as the engine does; by what `export` wrote, if that is given."""
        from pruning.runtimes.graph import answer
        from pruning.runtimes.served import Served

        session = self.open(written) if written else self.session(model)
        return Served(model, partial(answer, model, session))

    def session(self, model: "PreTrainedModel") -> Session:
        """Compile a model, once while it lives."""
        return self._compiled(model)[0]

    def export(self, model: "PreTrainedModel", tokenizer: Any, directory: Path) -> str:
        """Copy what the engine has compiled to a directory of its name, whole or not at all."""
        from pruning.system.files import whole_directory

        with whole_directory(directory / self.name) as made:
            shutil.copytree(self._compiled(model)[1], made, dirs_exist_ok=True)
        return self.name

    def _compiled(self, model: "PreTrainedModel") -> tuple[Session, Path]:
        """Return what runs a model, and the files that it was loaded from."""
        return COMPILED.get(model, repr(self), lambda: self._compile(model))

    def _compile(self, model: "PreTrainedModel") -> tuple[Session, Path]:
        from pruning.runtimes.graph import exported

        files = Path(tempfile.mkdtemp(prefix="pruning-graph-"))
        try:
            self.write(exported(model), files)
            session = self.open(files)
        except BaseException:
            shutil.rmtree(files, ignore_errors=True)
            raise
        finalize(session, shutil.rmtree, files, ignore_errors=True)
        return session, files
