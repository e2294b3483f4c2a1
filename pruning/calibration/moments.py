"""The moments of a model on disk, a file per block."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pruning.calibration.calibration import Calibration, Stored
from pruning.calibration.moment import Moment, Split, packed, stored_numbers, unpacked
from pruning.calibration.passes import collect
from pruning.calibration.retaken import Retaken
from pruning.calibration.routed import SAMPLE, Routed
from pruning.calibration.shared import collect_in_processes
from pruning.data.batch import Batch
from pruning.models.loaded import LoadedModel
from pruning.models.sites import Kind, Site
from pruning.models.tensor_files import Place, described, places
from pruning.system.cache import Cache, digest
from pruning.system.files import whole_file

PARTS = ("fit", "held")  # of a split, on disk


class Moments:
    """The moments of a model on disk, a file per block; held-out ones there, or taken again."""

    def __init__(
        self,
        directory: Path,
        drops: bool = False,
        retaken: Retaken | None = None,
        identity: str = "",
    ):
        self.directory = directory
        self.drops = drops  # leaves out those of held-out tokens
        self.retaken = retaken  # has them then
        self.identity = identity or directory.name  # what names them, however many are stored

    @classmethod
    def collect(
        cls,
        dense: LoadedModel,
        batches: list[Batch],
        options: Calibration,
        sites: list[Site],
        cache: Cache,
    ) -> "Moments":
        """Collect the moments of the `sites` of a model, or find them in the cache."""
        in_bfloat16 = options.precision.is_bfloat16(dense.model.device)
        given = dense.model, batches, options.weight, sites, in_bfloat16
        hidden = dense.model.config.hidden_size
        reads = sorted({site.reads for site in sites})
        whole = {
            "version": 6,
            "model": dense.fingerprint,
            "batches": [batch.digest() for batch in batches],
            "weight": options.weight,
            "in_bfloat16": in_bfloat16,
            "reads": reads,
        }
        drops = options.stored.drops(stored_bytes(sites, hidden))
        drops = drops and not cache.has("moments", whole)
        key = whole | ({"drops": "held"} if drops else {})

        def fill(directory: Path) -> None:
            if options.launcher is None:
                cls(directory, drops).fill(*given)
            else:
                collect_in_processes(options.launcher, given, directory, drops)

        size = stored_bytes(sites, hidden, Stored.fit if drops else Stored.both)
        entry = cache.stage("moments", key, cache.in_files(key, fill), size)
        return cls(entry, drops, Retaken(*given) if drops else None, digest(whole))

    def fill(self, *given: Any, writes: bool = True) -> None:
        """Collect the moments of blocks that are not written; of several processes one writes."""
        for index, block in enumerate(collect(*given, done=self.has)):
            if writes and not self.has(index):
                self.write(index, block)
            del block

    def write(self, index: int, block: dict[Site, Split | Routed]) -> None:
        """Write the moments of block `index`; of a symmetric H little more than half."""
        splits = {site: split for site, split in block.items() if isinstance(split, Split)}
        tensors = {
            f"{site.reads}.{part}.{name}": tensor.cpu()
            for site, split in splits.items()
            for part, moment in zip(PARTS, (split.fit, split.held), strict=True)
            if part == "fit" or not self.drops
            for name, tensor in _stored(moment).items()
        }
        for site, routed in block.items():
            if isinstance(routed, Routed):
                stored = routed.stored(site.reads).items()
                tensors |= {name: tensor.cpu().contiguous() for name, tensor in stored}
        shares = {f"{site.reads}.share": str(split.share) for site, split in splits.items()}
        with whole_file(self._file(index)) as partial:
            save_file(tensors, partial, metadata=shares)

    def has(self, index: int) -> bool:
        """Tell whether the moments of block `index` are written."""
        return self._file(index).exists()

    def __getitem__(self, site: Site) -> Split:
        """Read the moments of one site."""
        return self.split(site, torch.device("cpu"))

    def split(self, site: Site, device: torch.device) -> Split:
        """Read the moments of one site onto a device."""
        lying, rest = described(self._file(site.block))
        if self.retaken is None:
            held = _read(lying, f"{site.reads}.held.", device)
        else:
            held = self.retaken.moment(site, device)
        fit = _read(lying, f"{site.reads}.fit.", device)
        return Split(fit, held, float(rest[f"{site.reads}.share"]))

    def release(self) -> None:
        """Free what was taken again."""
        if self.retaken is not None:
            self.retaken.release()

    def routed(self, site: Site, device: torch.device) -> Routed:
        """Read onto a device what the experts of a block are given by their router."""
        return Routed.read(places(self._file(site.block)), site.reads, device)

    def all(self, site: Site, device: torch.device) -> Moment:
        """Return the moment of all tokens of one site, on a device."""
        return self.split(site, device).all

    def fit(self, site: Site, device: torch.device) -> Moment:
        """Read the moment of the tokens that are not held out onto a device."""
        return _read(places(self._file(site.block)), f"{site.reads}.fit.", device)

    def _file(self, index: int) -> Path:
        return self.directory / f"block-{index:03}.safetensors"


def stored_bytes(sites: list[Site], hidden: int, stored: Stored = Stored.both) -> int:
    """Return what the moments of sites of a model with such a hidden size take on a disk."""
    routed = [site for site in sites if site.kind is Kind.EXPERTS]
    inputs = {(one.block, one.reads): one.columns for site in sites for one in site.each}
    part = 4 * sum(stored_numbers(n) + 2 * n for n in inputs.values())
    samples = len(PARTS) * 4 * len(routed) * SAMPLE * hidden
    both = len(PARTS) * part + samples
    return part + samples if stored.drops(both) else both


def _stored(moment: Moment) -> dict[str, Tensor]:
    """Return what is written of a moment."""
    rest = {} if moment.variance is None else {"variance": moment.variance}
    return {"H": packed(moment.H), "mean": moment.mean} | rest


def _read(lying: dict[str, Place], path: str, device: torch.device) -> Moment:
    """Read what was written below `path`."""
    H, mean = (lying[f"{path}{name}"].read().to(device) for name in ("H", "mean"))
    variance = lying.get(f"{path}variance")
    rest = None if variance is None else variance.read().to(device)
    return Moment(unpacked(H, len(mean)), mean, None, rest)
