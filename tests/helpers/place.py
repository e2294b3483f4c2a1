"""A directory in which jobs of launch.py run on a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, PreTrainedModel

from tests.helpers.families import random_model
from tests.helpers.jobs import ROOT
from tests.helpers.tiny import word_tokenizer

WORDS = 125
LOCAL = ("hardware.repetitions=5", "hardware.tolerance=0.5", "hardware.noise=null")
WHERE = ("hardware.device=cpu", "hardware.sequence_length=128", "hardware.alignment=128", *LOCAL)


class Place:
    """A directory with a tiny model, text, cache and outputs, and jobs that stay within it."""

    def __init__(self, root: Path):
        self.root, self.cache = root, root / "cache"
        config = LlamaConfig(
            vocab_size=WORDS + 3,
            hidden_size=128,
            intermediate_size=1024,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            bos_token_id=1,
            eos_token_id=None,
            pad_token_id=0,
        )
        self.save(random_model(config), "dense")
        draw = torch.Generator().manual_seed(2)
        words = torch.randint(WORDS, (4000,), generator=draw).tolist()
        (root / "text.txt").write_text(" ".join(f"w{w}" for w in words))
        self.environment = {
            key: value
            for key, value in os.environ.items()
            if key not in ("HYDRA_FULL_ERROR", "PYTHONPATH")
        } | {
            "PRUNING_CACHE": str(self.cache),
            "TMPDIR": str(root),  # where the locks of devices are: away from jobs outside
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(root / "hf"),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }

    def save(self, model: PreTrainedModel, name: str) -> Path:
        """Save a model with a tokenizer of words."""
        model.save_pretrained(self.root / name)
        word_tokenizer(WORDS).save_pretrained(self.root / name)
        return self.root / name

    def arguments(self, *overrides: str, outputs: str = "outputs") -> list[str]:
        """Return the command line of a job that takes about two seconds."""
        of_method = {"slimgpt", "depth", "dense", "uniform_ffn", "uniform_ffn,depth"}
        elsewhere = any(override.startswith("hardware=") for override in overrides)
        own_search = of_method & {override.removeprefix("method=") for override in overrides}
        return [
            "model=gpt2",
            "model.name=tiny",
            f"model.path={self.root / 'dense'}",
            "calibration=text",
            f"calibration.text.path={self.root / 'text.txt'}",
            "calibration.tokens=1536",
            "calibration.sequence_length=32",
            *(() if elsewhere else WHERE),
            *([] if own_search else ["search.tokens=64", "search.steps=3"]),
            "suite=wikitext",
            f"suite.perplexity.text.path={self.root / 'text.txt'}",
            "suite.perplexity.window=[32]",
            "suite.perplexity.tokens=128",
            "tracker=none",
            f"hydra.run.dir={self.root / outputs}/${{run_name:}}",
            f"hydra.sweep.dir={self.root / outputs}",
            *overrides,
        ]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run launch.py as a user does."""
        return subprocess.run(
            [sys.executable, "launch.py", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def results(self, outputs: str = "outputs") -> list[dict]:
        """Read every result.json, by ascending target."""
        found = [json.loads(p.read_text()) for p in (self.root / outputs).glob("*/result.json")]
        return sorted(found, key=lambda result: result["speedup"]["target"])

    def entries(self) -> dict[str, int]:
        """Return when each cache entry was finished."""
        found = {p.parent: p.stat().st_mtime_ns for p in self.cache.glob("*/*/manifest.json")}
        return {str(path.relative_to(self.cache)): time for path, time in found.items()}
