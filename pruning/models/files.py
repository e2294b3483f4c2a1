"""What is wrong with the files of a checkpoint: placeholders, files cut short, files gone."""

import json
import re
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pruning.data.files import is_pointer

NAMED = 3  # names that an error lists
WORDS = re.compile(r"\d+|\D+").findall
PLACES = re.compile(  # of the tensors of a GGUF file
    r"(token_embd|position_embd|output_norm|output)\.(weight|bias)|blk\.(?P<block>\d+)\..+"
)
INDEX = ".index.json"  # says which shard holds which weights
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in the order that transformers looks
TEXTS = ("config.json", "generation_config.json")
TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
SLOW = (  # read where there is no tokenizer.json
    *("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model"),
    *("sentencepiece.bpe.model", "spm.model"),
)


@contextmanager
def reading(where: str | Path, said: str, revision: str | None = None) -> Iterator[None]:
    """Turn what transformers raises at a directory or hub id into one line.

    ValueError, which begins with `said`, or names the damaged file if it is one.
    """
    try:
        yield
    except ImportError:  # something is not installed
        raise
    except Exception as error:  # of many kinds: of json, pickle, safetensors, tokenizers
        if (directory := _directory(where, revision)) is not None:
            check_files(directory)
        if isinstance(error, RuntimeError):  # of torch, such as too little memory
            raise
        if not Path(where).exists():
            said += ", which is no directory here,"
        reason = (str(error).strip().splitlines() or ["it ends too early"])[0]
        if not isinstance(error, OSError | ValueError):
            reason = f"{type(error).__name__}: {reason}"
        raise ValueError(
            f"{said} cannot be loaded ({reason}): give a local directory, a GGUF file, or a hub id "
            "that this machine reaches and may read"
        ) from error


def check_files(directory: Path) -> None:
    """Raise ValueError that names the first file of a checkpoint that cannot be read, and why."""
    whole = directory / "tokenizer.json"
    names = (*TEXTS, *TOKENIZER, *((whole.name,) if whole.exists() else SLOW))
    for path in (directory / name for name in names):
        if path.exists():
            check_file(path)
    for name in WEIGHTS:
        alone, index = directory / name, directory / f"{name}{INDEX}"
        if alone.exists():
            check_file(alone)
        elif index.exists():
            check_file(index)
            for shard in _shards(index):
                if not shard.exists():
                    raise ValueError(f"{shard} is missing, and {index.name} names it: download it")
                check_file(shard)
        else:
            continue
        return


def check_file(path: Path) -> None:
    """Raise ValueError where a file cannot be read, by the rules of its suffix."""
    try:
        pointer = is_pointer(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    if pointer:
        raise ValueError(
            f"{path} is only a pointer of git-lfs: run `git lfs pull` in {path.parent}, or "
            "download the file"
        )
    if reason := _fault(path) if path.stat().st_size else "it is empty":
        raise ValueError(f"{path} is damaged ({reason}): remove it and download it again")


def check_gguf(path: Path) -> None:
    """Raise ValueError where a GGUF file is cut short, or holds what transformers would drop."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        kind = reader.fields["general.architecture"].contents()
        count = reader.fields[f"{kind}.block_count"].contents()
    except Exception as error:  # numpy's, struct's, unicode's, of any byte
        raise ValueError(
            f"{path} is damaged ({' '.join(str(error).split())}): remove it and download it again"
        ) from error
    spare = []
    for tensor in reader.tensors:
        place = PLACES.fullmatch(tensor.name)
        if place is None or (place["block"] and int(place["block"]) >= count):
            spare.append(tensor.name)
    if spare:
        raise ValueError(
            f"{path} holds weights that have no place in its {count} blocks ({listed(spare)}): "
            "give the checkpoint as safetensors"
        )


def listed(names: Iterable[str]) -> str:
    """List the first few names, in the order of their numbers, and how many more there are."""
    ordered = sorted(names, key=lambda name: [int(p) if p.isdigit() else p for p in WORDS(name)])
    more = len(ordered) - NAMED
    return ", ".join(ordered[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _fault(path: Path) -> str | None:
    """Say what is wrong with a file, or None."""
    if path.suffix == ".json":
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            return str(error)
        if path.name != "vocab.json" and not isinstance(given, dict):
            return "not a JSON object"
        if path.name.endswith(INDEX) and not isinstance(given.get("weight_map"), dict):
            return "no weight_map"
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            return str(error)
    if path.suffix == ".bin" and not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            if file.read(2) == b"PK":  # torch wrote pickles before
                return "it is cut short"
    if path.suffix == ".gguf":
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                return "it does not begin as a GGUF file does"
    return None


def _shards(index: Path) -> list[Path]:
    """Return the files that an index names."""
    names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    return [index.parent / name for name in sorted(set(names))]


def _directory(where: str | Path, revision: str | None) -> Path | None:
    """Return where files are: a directory itself, or what the hub's cache has of an id."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if Path(where).is_dir():
        return Path(where)
    try:
        config = try_to_load_from_cache(str(where), "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None
