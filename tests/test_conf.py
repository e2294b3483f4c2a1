"""Every YAML composes, names itself, and the identity of a job depends on what matters."""

import os
import re
import resource
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue

from pruning.composition import compose, register
from pruning.experiment import Experiment, run_name

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
OPTIONS = sorted(p.relative_to(CONF).with_suffix("") for p in CONF.glob("*/*.yaml"))
NEEDED = {
    "calibration/text": ["calibration.text.path=some.txt"],
    "model/local": ["model.path=some/directory"],
    "search/none": ["method=depth"],
    "calibration/task": ["task=sst2"],
    "task/glue": ["task.train.columns=[text]"],
    "hardware/file": ["hardware.path=some/table.json"],
    "hardware/roofline": [
        *("++hardware.flops.float32=1e+12", "hardware.bandwidth=1e+11"),
        *("hardware.launch=0.0", "hardware.source=nowhere"),
    ],
}


@cache
def composed(*overrides: str) -> Experiment:
    """Compose once; nothing may change what it returns."""
    return compose(list(overrides))


@cache
def config(*overrides: str):
    """Compose once, without turning it into objects; nothing may change what it returns."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra_compose("config", list(overrides))


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_every_option_composes_into_an_experiment(option):
    group, name = option.parts
    experiment = composed(f"{group}={name}", *NEEDED.get(str(option), []))
    assert isinstance(experiment, Experiment)
    chosen = experiment if group == "experiment" else getattr(experiment, group)
    assert not isinstance(chosen, dict)
    assert (chosen.study if group == "experiment" else chosen.name) == name


@pytest.mark.parametrize("method", sorted(o.name for o in OPTIONS if o.parts[0] == "method"))
def test_a_method_names_its_paper_and_the_searches_it_works_with(method):
    experiment = composed(f"method={method}")
    assert experiment.method.paper.startswith("https://arxiv.org/abs/")
    for search in (o.name for o in OPTIONS if o.parts[0] == "search"):
        chosen = composed(f"search={search}", *NEEDED.get(f"search/{search}", [])).search
        if isinstance(chosen, experiment.method.search_type):
            replace(experiment, search=chosen)
        else:
            with pytest.raises(ValueError, match=rf"^search={search} does not go with method="):
                replace(experiment, search=chosen)


def test_a_loop_of_tokens_is_not_compiled():
    with pytest.raises(ValueError, match=r"^runtime=torch_compile does not go with .*generate"):
        compose(["runtime=torch_compile", "hardware.phase=generate"])


def test_every_group_is_there():
    groups = {option.parts[0] for option in OPTIONS}
    assert groups == {p.name for p in CONF.iterdir() if p.is_dir()} - {"hydra"}  # launchers
    components = {"model", "method", "hardware", "calibration", "search", "suite", "tracker"}
    assert components <= groups


def test_yamls_are_few_short_and_have_no_target():
    files = list(CONF.rglob("*.yaml"))
    assert max(Counter(file.parent for file in files).values()) < 40
    for file in files:
        text = file.read_text()
        assert "_target_" not in text, file
        assert len(text.splitlines()) < 25 or file.name == "config.yaml", file


def test_a_task_brings_its_rows_and_its_suite():
    given = composed("task=mrpc")
    assert (given.calibration.name, given.calibration.text, given.suite.name) == (
        "task",
        None,
        "glue",
    )
    assert given.task.train.columns == ["sentence1", "sentence2"]
    assert set(given.suite.for_task(given.task).labelled) == {"mrpc"}
    mnli = composed("task=mnli")
    assert set(mnli.suite.for_task(mnli.task).labelled) == {"mnli_matched", "mnli_mismatched"}
    named = replace(given.suite, labelled={"my_task": given.suite.labelled["rte"]})
    assert named.for_task(replace(given.task, name="my_task")) == named
    second = composed("task=squad_v2")
    assert second.task.train.unanswerable
    assert set(second.suite.for_task(second.task).questions) == {"squad_v2"}
    other = compose(["task=sst2", "suite=none", "calibration=wikipedia"])
    assert (other.suite.name, other.calibration.name) == ("none", "wikipedia")
    with pytest.raises(ValueError, match=r"^calibration=task takes the rows of a task"):
        compose(["calibration=task"])
    with pytest.raises(ValueError, match=r"^suite='glue' cannot be used without a task"):
        composed("suite=glue").suite.for_task(None)
    with pytest.raises(ValueError, match=r"^suite='glue' cannot be used for task=mine: .* sst2, m"):
        compose(["task=sst2", "task.name=mine"]).suite.for_task(replace(given.task, name="mine"))
    assert composed().task is None


def test_the_full_suite_has_all_parts_and_the_average():
    full, seven = composed("suite=full").suite, composed("suite=commonsense").suite
    assert full.perplexity is not None
    assert set(full.tasks) == {*seven.tasks, *composed("suite=mmlu").suite.tasks}
    assert full.average == seven.average == [*seven.tasks]


def test_a_missing_value_is_refused():
    with pytest.raises(MissingMandatoryValue, match=r"calibration\.text\.path"):
        run_name(config("calibration=text"))


DEFAULT = run_name(config())


def test_the_name_is_readable():
    assert re.fullmatch(r"smollm2-135m-instruct-ziplm-local-1.25x-[0-9a-f]{8}", DEFAULT)


@pytest.mark.parametrize(
    "override",
    [
        "speedup=1.5",
        "seed=1",
        "method.damp=0.02",
        "model.sha256=null",
        "model=gpt2",
        "calibration.tokens=65536",
        "calibration.text.stop=0.8",
        "search=spdy",
        "search.steps=21",
        "hardware.tolerance=0.03",
        "suite=none",
        "suite.tasks.piqa.path=elsewhere",
    ],
)
def test_what_changes_the_result_changes_the_name(override):
    assert run_name(config(override)) != DEFAULT


@pytest.mark.parametrize(
    "override",
    [
        "tracker=none",
        "tracker.project=mine",
        "study=other",
        "cache=/elsewhere",
        "verify_cache=true",
        "model.license=mit",
        "model.base_model=mine/model",
        "calibration.dataset=mine/texts",
    ],
)
def test_what_does_not_change_the_result_does_not_change_the_name(override):
    changed = config(override)
    assert run_name(changed) == DEFAULT
    assert OmegaConf.to_container(changed) != OmegaConf.to_container(config())


def test_where_vllm_is_installed_does_not_change_the_name():
    known = run_name(config("runtime=vllm"))
    assert run_name(config("runtime=vllm", "runtime.python=/elsewhere/bin/python")) == known
    assert run_name(config("runtime=vllm", "runtime.enforce_eager=false")) != known


def test_the_dense_model_is_asked_for_no_speedup_unless_it_is_given():
    assert composed("method=dense").speedup == 1
    assert compose(["method=dense", "speedup=1.1"]).speedup == 1.1
    assert run_name(config("speedup=1.25")) == DEFAULT


def test_an_equal_value_written_otherwise_has_the_same_name():
    names = {run_name(config(f"speedup={value}")) for value in ("2", "2.0", "2e0")}
    assert len(names) == 1


def shell(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


@pytest.mark.job
@pytest.mark.parametrize("seed", ["1", "77"])
def test_the_name_is_the_same_in_every_process(seed):
    code = "from tests.test_conf import DEFAULT; print(DEFAULT)"
    assert shell("-c", code, PYTHONHASHSEED=seed).stdout.strip() == DEFAULT


@pytest.mark.job
@pytest.mark.parametrize(
    ("command", "limit"), [(["--help"], 0.45), (["--cfg", "job"], 0.4)], ids=["help", "cfg"]
)
def test_help_is_quick_and_imports_no_torch(command, limit):
    """In CPU seconds of importing torch and transformers, which depend on the machine alike."""

    def spent(*arguments: str) -> tuple[float, subprocess.CompletedProcess]:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = shell(*arguments)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done

    unit = max(spent("-c", "import torch, transformers")[0] for _ in range(2))
    (first, done), (second, _) = (spent("-X", "importtime", "launch.py", *command) for _ in "12")
    assert min(first, second) < limit * unit
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"hydra", "pruning.experiment"} <= imported
    heavy = {"torch", "transformers", "datasets", "lm_eval", "wandb", "scipy", "pandas"}
    assert not imported & heavy
    assert "speedup" in done.stdout


@pytest.mark.job
def test_schemas_are_no_options():
    """Neither help, nor help of Hydra, nor completion of a word shows them."""

    def said(*arguments: str, line: str = "") -> str:
        return subprocess.run(
            [sys.executable, "launch.py", *arguments],
            cwd=ROOT,
            env=os.environ | {"COMP_LINE": f"python launch.py {line}"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    text = said("--help")
    assert "\nmethod: dense, depth, flap," in text
    assert "schema" not in text + said("--hydra-help")
    assert said("-sc", "query=bash", line="s").split() == [
        *("search.", "search=", "seed=", "speedup=", "study=", "suite.", "suite="),
    ]
    assert said("-sc", "query=bash", line="schema").split() == []
    assert "method=ziplm" in said("-sc", "query=bash", line="method=").split()
