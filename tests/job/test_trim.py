"""A model of fewer tokens is pruned, and compared with the one that it was made of."""

from dataclasses import replace

import pytest
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, LlamaConfig

from pruning.composition import compose
from pruning.evaluation.suite import Suite
from pruning.job.trim import of_whole, trim
from pruning.latency.cost_models import Counted, Proxy
from pruning.latency.local import Local
from pruning.latency.measurement import Measurement
from pruning.latency.timer import Timing
from pruning.models.loaded import LoadedModel
from pruning.models.source import Model, Vocabulary
from pruning.system.cache import Cache
from tests.helpers.families import llama, random_model
from tests.helpers.place import Place
from tests.helpers.tiny import job_with, linear_table
from tests.helpers.tokenizers import byte_level
from tests.helpers.trimmed import LINES, ROWS, marked, with_rows

HALF = len(LINES) // 2


def experiment(tmp_path, **model):
    (tmp_path / "text.txt").write_text("\n".join(LINES[:HALF]))
    overrides = ["calibration=text", f"calibration.text.path={tmp_path / 'text.txt'}", "suite=none"]
    composed = compose([*overrides, "tracker=none"])
    values = {"name": "tiny", "path": "nowhere", "vocabulary": Vocabulary.trim} | model
    return replace(composed, model=Model(**values))


@pytest.fixture(scope="module")
def dense():
    tokenizer = marked(byte_level(ByteLevel(add_prefix_space=False)))
    return LoadedModel(with_rows(llama(), tokenizer), tokenizer)


def test_without_it_all_stays(dense, tmp_path):
    suite = Suite("none")
    asked = experiment(tmp_path, vocabulary=Vocabulary.keep)
    assert trim(asked, suite, dense, job_with(Cache(tmp_path))) == (dense, suite)
    assert dense.reference is dense
    with pytest.raises(ValueError, match=r"^model\.kept_scripts is for a trimmed vocabulary"):
        experiment(tmp_path, vocabulary=Vocabulary.keep, kept_scripts=["latin"])


def test_texts_and_scripts_that_are_named_stay(dense, tmp_path):
    job, suite = job_with(Cache(tmp_path)), Suite("none")
    (tmp_path / "more.txt").write_text("\n".join(LINES[HALF:]))
    sizes = []
    for more in ({}, {"kept_text": [str(tmp_path / "more.txt")]}, {"kept_scripts": ["latin"]}):
        fewer, _ = trim(experiment(tmp_path, **more), suite, dense, job)
        assert fewer.reference is dense
        sizes.append(fewer.model.config.vocab_size)
    assert sizes[0] < min(sizes[1:])
    with pytest.raises(ValueError, match=r"^model\.kept_text='?\S*none\.txt"):
        trim(experiment(tmp_path, kept_text=[str(tmp_path / "none.txt")]), suite, dense, job)


def test_a_budget_is_of_the_model_as_it_was(dense, tmp_path, monkeypatch):
    job = job_with(Cache(tmp_path))
    asked = experiment(tmp_path)
    fewer, _ = trim(asked, Suite("none"), dense, job)
    table, pairs = linear_table(fewer.model), []

    def compare(self, *models, confirm=False):
        pairs.append(models)
        return Timing([12.0, 12.0]), Timing([10.0, 10.0])

    monkeypatch.setattr(Measurement, "compare", compare)
    here = replace(asked, hardware=Local(sequence_length=16))
    found = of_whole(here, table, fewer, job)
    assert found.dense == pytest.approx(1.2 * table.dense)
    assert (found.rest, found.parts) == (table.rest, table.parts)
    assert pairs == [(dense.model, fewer.model)]
    assert of_whole(here, table, dense, job) is table
    counted = Proxy(name="params", counts=Counted.parameters, sequence_length=16, alignment=16)
    elsewhere = replace(asked, hardware=counted)
    told = [
        counted.profile(each.model, asked.method.sites(each.model), job.cache).dense
        for each in (dense, fewer)
    ]
    found = of_whole(elsewhere, replace(table, dense=told[1]), fewer, job)
    assert found.dense == told[0] > told[1]


@pytest.mark.job
def test_a_job_prunes_it_and_says_what_was_lost(tmp_path):
    place = Place(tmp_path)
    tokenizer = marked(byte_level(ByteLevel(add_prefix_space=False)))
    sizes = {"hidden_size": 128, "intermediate_size": 1024, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    config = LlamaConfig(vocab_size=ROWS, max_position_embeddings=128, **sizes, **heads)
    with_rows(random_model(config), tokenizer).save_pretrained(tmp_path / "dense")
    tokenizer.save_pretrained(tmp_path / "dense")
    (tmp_path / "text.txt").write_text("\n".join(LINES[:HALF]))
    (tmp_path / "other.txt").write_text("\n".join(LINES[HALF:]))
    arguments = place.arguments(
        "model.vocabulary=trim",
        "model.license=mit",
        f"suite.perplexity.text.path={tmp_path / 'other.txt'}",
        "speedup=1.3",
    )
    done = place.run(*arguments, "dry_run=true")
    assert done.returncode == 0, done.stderr[-3000:]
    done = place.run(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    (result,) = place.results()
    (out,) = (tmp_path / "outputs").glob("*/")
    fewer = AutoTokenizer.from_pretrained(out / "model")
    rows, left = result["vocabulary"]["all"]
    assert (rows, left) == (ROWS, len(fewer))
    assert left < rows
    evaluation = result["evaluation"]
    for side in ("dense", "pruned"):
        assert set(evaluation[side]) == {"wikitext/text/bits_per_byte_32"}
        assert 1 < evaluation[side]["wikitext/text/bits_per_byte_32"] < 20
    assert evaluation["windows"]["wikitext/text/bits_per_byte_32"]["bytes"] > 100
    assert result["params"]["dense"] == sum(p.numel() for p in random_model(config).parameters())
    card = (out / "model" / "README.md").read_text()
    assert f"{left:,} of {rows:,} tokens are left: those that the text that it was" in card
    assert "| latin |" in card
    line = LINES[3]
    tokens = [each.convert_ids_to_tokens(each(line).input_ids) for each in (tokenizer, fewer)]
    assert tokens[0] == tokens[1]
