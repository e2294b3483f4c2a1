"""Every method without training on every family of encoders, by the Python way in."""

import jaxtyping
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from pruning import Calibrated, Calibration, Proxy, Text, prune
from pruning.models.sites import sites
from tests.helpers.families import ENCODERS
from tests.helpers.tiny import word_tokenizer

METHODS = ("ziplm", "slimgpt", "uniform_ffn", "depth", "flap", "wanda_sp", "magnitude", "svd")
IDS = torch.randint(3, 120, (2, 11), generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def no_type_checks():
    """Let options be given as users may: the type checks of the tests know no names of enums."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.job
@pytest.mark.parametrize("family", ENCODERS)
def test_every_method_prunes_every_encoder(family, tmp_path):
    """To a quarter less, and transformers gets the same model from what is saved."""
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"w{i % 90} w{i * i % 97} w{i % 7}" for i in range(600)))
    here = {"sequence_length": 16, "alignment": 16}
    model, tokenizer = ENCODERS[family](), word_tokenizer()
    whole = sum(site.columns for site in sites(model))
    for method in METHODS:
        searched = {} if method in ("slimgpt", "depth") else {"search": Calibrated(tokens=64)}
        pruned = prune(
            model,
            tokenizer,
            method=method,
            speedup=1.25,
            suite="none",
            hardware=Proxy(name="params", counts="parameters", **here),
            calibration=Calibration(text=Text(str(text)), tokens=512, sequence_length=16),
            cache=tmp_path / "cache",
            **searched,
        )
        out = pruned.save(tmp_path / method) / "model"
        found = AutoModelForSequenceClassification.from_pretrained(out, trust_remote_code=True)
        with torch.no_grad():
            expected = pruned.model(input_ids=IDS).logits
            torch.testing.assert_close(found(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-5)
        if method != "svd":
            assert sum(site.columns for site in sites(pruned.model)) < whole
