"""The main job with its archive in an object store: Composer's launcher with two ranks, then the command line."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from composer.cli.launcher import get_free_tcp_port

from archive.moto_server import MotoServer
from forked_python import forked_python, launch, python
from reuse_algos.archive import RunArchive

ROOT = Path(__file__).parents[1]
SMALL = ["data.train_examples=256", "data.batch_size=64", "max_duration=2ep", "progress_bar=false", "device=cpu"]


def _launch(method: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    recipe = str(ROOT / f"yamls/digits/{method}.yaml")
    return launch(2, "-m", "reuse_algos.train", recipe, *SMALL, *overrides)


@pytest.mark.ranks
def test_record_distil_compare_and_verify_in_a_bucket(s3: MotoServer, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bucket = s3.new_bucket()
    location = f"s3://{bucket}/team/archive"
    for method in ("baseline", "distilled"):
        done = _launch(method, f"archive={location}", "seed=1")
        assert done.returncode == 0, done.stdout + done.stderr
    archive = RunArchive(location, read_only=True)
    baseline, distilled = archive.runs(order="first")
    assert [run.tags["method"] for run in (baseline, distilled)] == ["baseline", "distilled"]
    assert [use.run_id for use in distilled.manifest.prior_runs] == [baseline.id]
    hardware = baseline.manifest.environment
    assert hardware is not None
    assert hardware.hardware["world_size"] == 2
    assert int(baseline.signal("logits").seen(0).sum()) == 256

    # What was fetched is kept by its content: what the ranks distilled from is here once, and what it says it is.
    cached = {path.name for path in (tmp_path / "cache" / "reuse_algos" / "files").rglob("*") if len(path.name) == 64}
    signals = {entry.sha256 for entry in baseline.manifest.files if entry.kind == "signals"}
    assert signals
    assert signals <= cached

    compared = python("-m", "reuse_algos.cli", "compare", location, "--json")
    assert compared.returncode == 0, compared.stderr
    result = json.loads(compared.stdout)
    assert result["archive"] == location
    assert {group["name"]: group["n"] for group in result["groups"]} == {"baseline": 1, "distilled": 1}

    monkeypatch.setenv("REUSE_ALGOS_ARCHIVE", "/nowhere")  # a URL is an archive, not a run of that one
    verified = python("-m", "reuse_algos.cli", "verify", location, "--json")
    assert (verified.returncode, json.loads(verified.stdout)["problems"]) == (0, [])

    (found, *_) = s3.client.list_objects_v2(Bucket=bucket, Prefix=f"team/archive/runs/{baseline.id}/data/")["Contents"]
    data = s3.client.get_object(Bucket=bucket, Key=found["Key"])["Body"].read()
    s3.client.put_object(Bucket=bucket, Key=found["Key"], Body=data[:-1] + bytes([data[-1] ^ 1]))
    verified = python("-m", "reuse_algos.cli", "verify", location, "--json")
    (problem,) = json.loads(verified.stdout)["problems"]
    assert (verified.returncode, problem["run_id"]) == (1, baseline.id)
    assert problem["path"] == found["Key"].removeprefix("team/archive/")


@pytest.mark.ranks
def test_two_nodes_with_caches_of_their_own_share_a_bucket(s3: MotoServer, tmp_path: Path) -> None:
    """What each host fetches lies in its own cache, and the record is that of one machine."""
    location = f"s3://{s3.new_bucket()}/archive"
    done = python("-m", "reuse_algos.train", str(ROOT / "yamls/digits/baseline.yaml"), *SMALL, f"archive={location}")
    assert done.returncode == 0, done.stdout + done.stderr
    port, recipe = str(get_free_tcp_port()), str(ROOT / "yamls/digits/distilled.yaml")
    nodes = []
    for node in range(2):
        words = ["-n", "1", "--world_size", "2", "--node_rank", str(node), "--master_addr", "127.0.0.1"]
        words += ["--master_port", port, "-m", "reuse_algos.train", recipe, *SMALL, f"archive={location}"]
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / f"host-{node}")}
        command = [forked_python(), "-m", "composer.cli.launcher", *words]
        nodes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    for one in nodes:
        said, _ = one.communicate(timeout=600)
        assert one.returncode == 0, said.decode()

    archive = RunArchive(location, read_only=True)
    baseline, distilled = archive.runs(order="first")
    assert [use.run_id for use in distilled.manifest.prior_runs] == [baseline.id]
    assert distilled.manifest.environment is not None
    assert distilled.manifest.environment.hardware["world_size"] == 2
    signals = {entry.sha256 for entry in baseline.manifest.files if entry.kind == "signals"}
    for node in range(2):
        files = (tmp_path / f"host-{node}" / "reuse_algos" / "files").rglob("*")
        assert signals
        assert signals <= {path.name for path in files}, node
    assert archive.verify().ok


@pytest.mark.ranks
def test_a_bucket_out_of_reach_gets_the_record_later(s3: MotoServer, tmp_path: Path, monkeypatch) -> None:
    location, spool = f"s3://{s3.new_bucket()}/archive", str(tmp_path / "spool")
    warn = [f"callbacks.run_recorder={{spool: {spool}, signals: {{logits: {{}}}}}}"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody answers there
    refused = _launch("baseline", f"archive={location}", "seed=1")
    assert refused.returncode == 2
    assert "no connection" in refused.stderr
    assert "Traceback" not in refused.stderr
    done = _launch("baseline", f"archive={location}", "seed=1", *warn)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"reuse-algos copy {spool} {location}" in done.stdout + done.stderr
    refused = _launch("distilled", f"archive={location}", "seed=1", *warn)  # what reads the archive cannot go without
    assert refused.returncode == 2
    assert "no connection" in refused.stderr

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    copied = python("-m", "reuse_algos.cli", "copy", spool, location, "--json")
    assert copied.returncode == 0, copied.stderr
    (here,), (there,) = (RunArchive(place).runs() for place in (spool, location))
    assert there.manifest == here.manifest
    assert int(there.signal("logits").seen(0).sum()) == 256
    assert RunArchive(location).verify().ok
