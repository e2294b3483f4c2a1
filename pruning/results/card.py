"""The model card: what was done to a checkpoint, with which command, and what was measured."""

import json
import re
from pathlib import Path
from typing import Any

from pruning.results.report import (
    evaluation_rows,
    latency_rows,
    loading,
    recovery_rows,
    source,
    windows,
)
from pruning.results.result import Result, config_group, times
from pruning.results.serving import serving
from pruning.system.files import is_list

SCRIPTS = 8  # that a card lists
URL = "path/to/this/directory"
LIMITED = (
    "The suite's `limit` cuts tasks short: they compare the two models with each other, not with "
    "published numbers."
)
PIPELINES = {
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForQuestionAnswering": "question-answering",
}


def card(result: Result) -> str:
    """Return the README.md of a checkpoint: front matter for the hub, then the facts."""
    front: dict[str, str | list[str]] = {
        "library_name": "transformers",
        "pipeline_tag": PIPELINES[result.loader],
        "tags": ["pruning", "structured-pruning", str(result.config["method"]["name"])],
    }
    model = result.config["model"]
    if licence := model.get("license"):
        front = {"license": licence, **front}
    if base := hub_id(model) or (model.get("wheel") and model.get("base_model")):
        front = {"base_model": base, **front}
    if read := datasets(result.config):
        front["datasets"] = read
    # JSON is YAML, and quotes what needs quoting
    matter = "\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items())
    runtime = config_group(result.config, "runtime").get("name", "")
    served = serving(runtime, result.latency.runtime)
    sections = [what(result), measured(result), kept(result), lost(result), load(result), served]
    return f"---\n{matter}\n---\n\n" + "\n\n".join(filter(None, sections)) + "\n"


def what(result: Result) -> str:
    """Say what was done."""
    config, params = result.config, result.params
    model = config["model"]
    origin = f"`{model['path']}`"
    if wheels := model.get("wheel"):
        origin += f" of `{', '.join(wheels) if is_list(wheels) else wheels}`"
    until = f"it ran {result.speedup.reached:.2f}x as fast on the hardware below"
    if result.speedup.basis != "measured":
        until = f"its speedup on the hardware below was {result.speedup.text()}, not measured"
    return (
        f"# {result.name}\n\n"
        f"{model['name']} ({origin}), pruned with method `{config['method']['name']}` until "
        f"{until}. Whole attention heads, FFN "
        f"channels and sub-blocks were removed: {params.pruned:,} of {params.dense:,} parameters "
        f"are left ({params.ratio:.1%}). {trained(result)}The command:\n\n"
        f"```\n{result.command}\n```"
    )


def trained(result: Result) -> str:
    """Say how it was trained after pruning, if it was."""
    took = result.recovery
    if not took:
        return ""
    return f"Then it was trained (`recovery={took['kind']}`) for {took['steps']} steps. "


def measured(result: Result) -> str:
    """Tabulate speed and quality of both models."""
    speedup, latency, environment = result.speedup, result.latency, result.environment
    where = environment.get("gpu") or f"{environment['cpu']}, {environment['threads']} threads"
    predicted = [("speedup predicted", "", times(speedup.predicted))]
    if speedup.measured is None:
        predicted = []  # said below
    rows = [
        ("speedup target", "", times(speedup.target)),
        *predicted,
        (f"speedup {speedup.basis}", "", times(speedup.reached)),
        *latency_rows(result),
        ("parameters", f"{result.params.dense:,}", f"{result.params.pruned:,}"),
        *evaluation_rows(result),
        *recovery_rows(result),
    ]
    how = (
        f"{latency.text()} (batch x sequence) on {where}, dense and pruned interleaved, "
        f"{latency.pruned.n} times each; torch {environment['packages']['torch']}. Elsewhere the "
        "speedup may differ."
    )
    if speedup.basis != "measured":
        how = (
            f"{latency.text()} (batch x sequence) on hardware `{result.config['hardware']['name']}`"
            f". Its speed is {speedup.basis}, and was not measured. {source(result)}"
        ).rstrip()
    of_text = windows(result)
    return (
        f"## {speedup.basis.capitalize()}\n\n{how}\n\n"
        + markdown(("", "dense", "pruned"), rows)
        + (f"\n\n{of_text}" if of_text else "")
        + ("\n\n± is one standard error." if "±" in str(rows) else "")
        + (f"\n\n{LIMITED}" if config_group(result.config, "suite").get("limit") else "")
        + "".join(f"\n\nNot run: {reason}." for reason in result.evaluation.not_run.values())
        + "".join(
            f"\n\n{share:.1%} of the calibration rows hold text of `{part}`'s documents: its "
            "numbers may flatter the pruned model."
            for part, share in result.evaluation.shared.items()
        )
    )


def kept(result: Result) -> str:
    """Tabulate what is left of each block."""
    modules = dict.fromkeys(module for b in result.allocation for module in b.ranks)
    routed = any(b.experts for b in result.allocation)
    rows: list[tuple[str, ...]] = []
    for b in result.allocation:
        left = *([b.experts] if routed else []), *(b.ranks.get(module, "") for module in modules)
        rows.append(tuple(map(str, (b.block, b.query_heads, b.kv_heads, b.ffn, *left))))
    head = ("block", "query heads", "KV heads", "FFN channels")
    head += ("experts of so many",) * routed + tuple(f"rank of {m}" for m in modules)
    return "## Kept per block\n\n" + markdown(head, rows) + embedding(result) + ranks(result)


def lost(result: Result) -> str:
    """Say which tokens were removed, and what that means; nothing where none were."""
    if not result.vocabulary:
        return ""
    (before, after), *_ = result.vocabulary.values()
    model = result.config["model"]
    stay = ["the text that it was calibrated on", *(f"`{path}`" for path in model["kept_text"])]
    stay += [f"the script {name.lower()}" for name in model["kept_scripts"]]
    rows = [(name.lower(), f"{old:,}", f"{new:,}") for name, (old, new) in by_script(result)]
    return (
        f"## Vocabulary\n\n{after:,} of {before:,} tokens are left: those that {', '.join(stay)} "
        "needs. Such text has the same tokens as in the dense model. All other text can still be "
        "read and written, in more and shorter tokens, down to single bytes. The model has learnt "
        "less of these: expect worse and slower answers there. Tokens have other numbers than in "
        "the dense model. Quality is given per byte, since the tokens are not the same.\n\n"
        + markdown(("tokens with letters of", "dense", "pruned"), rows)
    )


def by_script(result: Result) -> list[tuple[str, list[int]]]:
    """Return the scripts of most tokens, and how many are left; the others together."""
    scripts = [(name, counts) for name, counts in result.vocabulary.items() if name != "all"]
    first, rest = scripts[:SCRIPTS], scripts[SCRIPTS:]
    if rest:
        first.append(("other scripts", [sum(counts[i] for _, counts in rest) for i in (0, 1)]))
    return first


def embedding(result: Result) -> str:
    """Say of which ranks the embedding is, cluster by cluster of its tokens."""
    if not result.embedding:
        return ""
    left = ", ".join(map(str, result.embedding.values()))
    return f"\n\nThe embedding is a product, of rank {left} from frequent to rare tokens."


def ranks(result: Result) -> str:
    """Say which ranks pay on this hardware, where projections were factorised."""
    if not result.break_even:
        return ""
    head = (
        "projection",
        "full rank",
        "fewer parameters up to rank",
        "faster on this hardware up to rank",
    )
    rows = [
        (module, *(str(by_block[key]) for key in ("full", "smaller", "faster")))
        for module, by_block in result.break_even.items()
    ]
    slower = [
        module
        for module, by_block in result.break_even.items()
        if by_block["faster"] < by_block["smaller"]
    ]
    text = "\n\nTwo projections in the place of one:\n\n" + markdown(head, rows)
    if slower:
        text += (
            "\n\nBetween the two ranks a product has fewer parameters than the dense projection "
            f"and takes longer: {', '.join(slower)}. Such ranks are not offered to the search."
        )
    return text


def load(result: Result) -> str:
    """Say how it is loaded."""
    return (
        f"## Load\n\n```python\n{loading(URL, True, result.loader)}\n```\n\n"
        "`trust_remote_code` lets transformers run the one modelling file in this directory; "
        "where `config.json` has no `auto_map` there is none, and the argument can go. Written "
        f"with transformers {result.environment['packages']['transformers']}; 4.57 reads it too."
    )


def markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a table whose columns, but the first, are flush right."""
    rule = ("---", *("---:" for _ in head[1:]))
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def datasets(config: dict[str, Any]) -> list[str]:
    """Return the hub ids of what the model was calibrated or trained on, where they have some."""
    calibration = config_group(config, "calibration")
    text = config_group(calibration, "text")
    rows = (
        text,
        config_group(config_group(config, "recovery"), "text"),
        config_group(config_group(config, "task"), "train"),
    )
    read: list[str | None] = [calibration.get("dataset")] if text.get("wheel") else []
    read += [hub_id(each) for each in rows if each.get("path")]
    return list(dict.fromkeys(filter(None, read)))


def hub_id(source: dict[str, Any]) -> str | None:
    """Return the hub id of a model or of rows, where they came from there."""
    path = str(source["path"])
    if source.get("wheel") or path.endswith(".gguf") or path.startswith(".") or Path(path).exists():
        return None
    return path if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) else None
