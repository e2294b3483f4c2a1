"""What a model kept of each block, from its allocation.json."""

import json
from pathlib import Path


def units(path: Path) -> dict[str, dict[int, tuple[int, int]]]:
    """Return by part and block how many units are kept, and of how many, from an allocation.json.

    Parts are `attention` (query heads), `ffn` (channels), and single projections (ranks).
    """
    parts: dict[str, dict[int, tuple[int, int]]] = {}
    for name, site in json.loads(path.read_text()).items():
        group, _, rest = name.partition(".")
        block, _, part = rest.partition(".")
        if group == "block":
            parts.setdefault(part, {})[int(block)] = (len(site["keep"]), site["of"])
    return {part: dict(sorted(blocks.items())) for part, blocks in parts.items()}
