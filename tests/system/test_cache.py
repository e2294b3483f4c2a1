"""The cache command: sizes, and removing what was not used lately."""

import json
import os
import time
from shutil import copytree

import pytest

from pruning import cli
from pruning.system import cache as cache_module
from pruning.system.cache import Cache
from pruning.system.device_locks import locked


def main(arguments):
    return cli.main(["cache", *arguments])


@pytest.fixture
def root(tmp_path):
    for stage, days, size in (("moments", 40, 3000), ("moments", 1, 500), ("levels", 40, 200)):

        def build(out, size=size):
            (out / "data").write_bytes(bytes(size))

        entry = Cache(tmp_path).stage(stage, [days, size], build)
        os.utime(entry, times=(0, time.time() - days * 86400))
    return tmp_path


def test_sizes_are_shown_by_stage(root, capsys):
    assert main(["--root", str(root)]) == 0
    out = capsys.readouterr().out
    assert "moments" in out
    assert "levels" in out
    found = Cache(root).entries()
    sizes = {e.path: sum(p.stat().st_size for p in e.path.iterdir()) for e in found}
    assert [e.size for e in found] == [sizes[e.path] for e in found]
    assert sum(e.size for e in found) > 3700


@pytest.fixture
def read(monkeypatch):
    """Count which files are read for their sums."""
    names = []
    sums = cache_module.file_sha256

    def counted(path):
        names.append(path.name)
        return sums(path)

    monkeypatch.setattr(cache_module, "file_sha256", counted)
    return names


def build_moments(out):
    for name in ("a", "b"):
        (out / name).write_text(f"right {name}")


def test_a_file_is_read_once_per_change_of_its_time(tmp_path, read):
    entry = Cache(tmp_path).stage("moments", 1, build_moments)
    read.clear()
    for cache in (Cache(tmp_path), Cache(tmp_path)):
        cache.stage("moments", 1, build_moments)
    assert read == []
    os.utime(entry / "b", ns=(0, 17))  # as a copy of a cache has other times
    inode = (entry / "b").stat().st_ino
    for cache in (Cache(tmp_path), Cache(tmp_path)):
        cache.stage("moments", 1, build_moments)
    assert read == ["b"]
    assert (entry / "b").stat().st_ino == inode  # not built again
    Cache(tmp_path, verify=True).stage("moments", 1, build_moments)
    assert read == ["b", "a", "b"]


def test_an_entry_of_before_times_were_kept_is_read_once(tmp_path, read):
    entry = Cache(tmp_path).stage("moments", 1, build_moments)
    manifest = json.loads((entry / "manifest.json").read_text())
    for file in manifest["files"].values():
        del file["mtime_ns"]
    (entry / "manifest.json").write_text(json.dumps(manifest))
    read.clear()
    for cache in (Cache(tmp_path), Cache(tmp_path)):
        cache.stage("moments", 1, build_moments)
    assert read == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "kept_time", "verify"),
    [("short", True, False), ("WRONG b", False, False), ("WRONG b", True, True)],
)
def test_damage_is_found_by_size_by_time_or_by_verifying(tmp_path, content, kept_time, verify):
    cache = Cache(tmp_path, verify)
    path = cache.stage("moments", 1, build_moments) / "b"
    time_ns = path.stat().st_mtime_ns
    path.write_text(content)
    os.utime(path, ns=(time_ns, time_ns if kept_time else time_ns + 1))
    assert (cache.stage("moments", 1, build_moments) / "b").read_text() == "right b"


@pytest.mark.parametrize("manifest", ["", "{}", "[]", '{"files": 3}', '{"files": {"data": 3}}'])
def test_a_manifest_that_is_none_is_damage(tmp_path, manifest):
    def build(out):
        (out / "data").write_text("right")

    entry = Cache(tmp_path).stage("levels", 1, build)
    (entry / "data").write_text("wrong")
    (entry / "manifest.json").write_text(manifest)
    assert (Cache(tmp_path).stage("levels", 1, build) / "data").read_text() == "right"


def test_what_a_killed_job_left_goes_unless_a_job_is_at_it(tmp_path):
    cache = Cache(tmp_path)

    def build(out):
        (out / "data").write_text("half")
        main(["--root", str(tmp_path), "prune"])
        assert (out / "data").exists()
        copytree(out, tmp_path / "moments" / f"{out.name}9")  # of a job that was killed

    entry = cache.stage("moments", 1, build)
    for foreign in ("moments/.git", "checkpoints/mine", "mine/0123456789abcdef"):
        (tmp_path / foreign).mkdir(parents=True)
    assert [e.useful for e in cache.entries()] == [False, True]
    main(["--root", str(tmp_path), "prune", "--dry-run"])
    assert len(cache.entries()) == 2
    main(["--root", str(tmp_path), "prune"])
    assert [e.path for e in cache.entries()] == [entry]
    main(["--root", str(tmp_path), "prune", "--days", "0"])
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.glob("*/*") if p.is_dir()}
    assert left == {"moments/.git", "checkpoints/mine", "mine/0123456789abcdef"}


def test_what_was_not_used_lately_goes_and_the_rest_stays(root, capsys):
    main(["--root", str(root), "prune", "--days", "30", "--dry-run"])
    assert len(Cache(root).entries()) == 3
    main(["--root", str(root), "prune", "--days", "30", "--stage", "levels"])
    assert [e.stage for e in Cache(root).entries()] == ["moments", "moments"]
    main(["--root", str(root), "prune", "--days", "30"])
    (left,) = Cache(root).entries()
    assert left.days < 2
    said = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in said] == [
        "would remove 2 of 3 entries",
        "removed 1 of 1 entries of levels",
        "removed 1 of 2 entries",
    ]


def test_what_a_job_works_at_stays(root, capsys):
    old = next(e for e in Cache(root).entries() if e.stage == "levels")
    with locked(old.path.with_suffix(".lock")):
        main(["--root", str(root), "prune", "--stage", "levels"])
    assert old.path.is_dir()
    assert "stay" in capsys.readouterr().out


def test_use_renews_an_entry(root):
    old = next(e for e in Cache(root).entries() if e.stage == "levels")

    def never(directory):
        raise AssertionError

    Cache(root).stage("levels", [40, 200], never)
    (entry,) = (e for e in Cache(root).entries() if e.path == old.path)
    assert entry.days < 0.01


@pytest.fixture
def killed(tmp_path):
    """Leave the checkpoints of a training that was killed in the middle; return its cache."""
    cache, key = Cache(tmp_path), {"steps": 9}

    def dies(out):
        step = cache.checkpoints(key) / "checkpoint-5"
        step.mkdir(parents=True)
        (step / "optimizer.pt").write_bytes(bytes(5000))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.stage("training", key, dies)
    return cache


def aged(cache, days):
    then = time.time() - days * 86400
    for path in [*cache.root.glob("checkpoints/*"), *cache.root.glob("checkpoints/*/**/*")]:
        os.utime(path, times=(then, then))


def test_checkpoints_of_a_killed_training_are_shown_and_stay_to_be_gone_on_from(killed, capsys):
    main(["--root", str(killed.root)])
    assert "checkpoints" in capsys.readouterr().out
    (entry,) = killed.entries()
    assert (entry.stage, entry.size, entry.days < 0.01) == ("checkpoints", 5000, True)
    main(["--root", str(killed.root), "prune"])
    aged(killed, 29)
    main(["--root", str(killed.root), "prune"])
    assert len(killed.entries()) == 1
    (killed.root / "checkpoints").joinpath(entry.path.name, "checkpoint-5", "new").touch()
    assert killed.entries()[0].days < 0.01  # a training that goes on is in use


def test_checkpoints_that_nobody_went_on_from_go(killed, capsys):
    aged(killed, 31)
    main(["--root", str(killed.root), "prune", "--stage", "moments"])
    main(["--root", str(killed.root), "prune", "--dry-run"])
    assert len(killed.entries()) == 1
    main(["--root", str(killed.root), "prune", "--stage", "checkpoints"])
    assert list((killed.root / "checkpoints").iterdir()) == []
    assert "removed 1 of 1 entries of checkpoints, " in capsys.readouterr().out


@pytest.mark.parametrize("lock", ["training/{}.lock", "checkpoints/{}/training.lock"])
def test_checkpoints_of_a_training_that_runs_stay(killed, lock, capsys):
    """Its job has the lock of the stage; processes that outlive their job have one of their own."""
    aged(killed, 31)
    (entry,) = killed.entries()
    with locked(killed.root / lock.format(entry.path.name)):
        main(["--root", str(killed.root), "prune", "--days", "0"])
    assert (entry.path / "checkpoint-5" / "optimizer.pt").exists()
    assert "stay" in capsys.readouterr().out
    main(["--root", str(killed.root), "prune", "--days", "0"])
    assert not entry.path.exists()


def test_the_log_names_an_entry_once(tmp_path, caplog):
    caplog.set_level("INFO")
    for _ in range(2):  # jobs
        cache = Cache(tmp_path)
        for _ in range(3):
            cache.stage("stage", {"a": 1}, lambda out: None)
    said = [record.getMessage().split(",")[0] for record in caplog.records]
    assert [line[:14] for line in said] == ["stage: compute", "stage: found i"]
