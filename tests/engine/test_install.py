"""The built wheel in an environment that has what it asks for and nothing else."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.engine.environments import link, required

ROOT = Path(__file__).parents[2]
PACKAGES = {"arctic_sglang", "batch_sdk", "speculative", "swiftkv"}

pytestmark = pytest.mark.install


def run(*command, cwd, timeout=900):
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=timeout, env=clean, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--disable-pip-version-check", "--no-deps"]
    run(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(folder), str(ROOT), cwd=folder)
    (built,) = folder.glob("arctic_sglang-*.whl")
    return built


# What the wheel asks for is linked from the environment that runs the tests, into which pip has just put it; `make
# test-full` lets pip put all of it (9 GB) into an empty environment once more, as a stranger would.
@pytest.fixture(scope="module", params=["linked", pytest.param("pip", marks=pytest.mark.full)])
def installed(request, wheel, tmp_path_factory):
    """`bin/` of an environment into which the wheel was installed, and an empty folder to work in."""
    folder = tmp_path_factory.mktemp("installed")
    environment = folder / "env"
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python")]
    options = ["--quiet", "--disable-pip-version-check", "--progress-bar", "off"]
    run(sys.executable, "-m", "venv", "--without-pip", str(environment), cwd=folder)
    if request.param == "linked":
        link(required(wheel), environment)
        options += ["--no-deps", "--no-index"]
    run(*pip, "install", *options, str(wheel), cwd=folder, timeout=2400)
    run(*pip, "check", cwd=folder)
    work = folder / "work"
    work.mkdir()
    yield environment / "bin", work
    shutil.rmtree(environment)  # up to 9 GB, which pytest would keep for its next three runs


def test_the_wheel_holds_the_four_packages_and_the_licence(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == PACKAGES
    assert any(name.endswith("LICENSE") for name in names)
    assert any(name.endswith("NOTICE") for name in names)


def test_what_was_not_asked_for_is_not_there(installed):
    python, work = installed
    find = "import importlib.util as u; print([u.find_spec(name) is None for name in ('pytest', 'sglang', 'torch')])"
    assert run(str(python / "python"), "-c", find, cwd=work).strip() == "[True, False, False]"


def test_doctor_is_healthy(installed):
    python, work = installed
    assert run(str(python / "arctic-doctor"), cwd=work).rstrip().endswith("healthy")


def test_flags_are_in_sglang_serve_help(installed):
    python, work = installed
    assert "--embedding-pooling" in run(str(python / "sglang"), "serve", "--help", cwd=work)


def test_batch_job_with_a_real_engine(installed):
    python, work = installed
    pq.write_table(pa.table({"code": ["def add(a, b):\n    return a + b\n"] * 3}), work / "in.parquet")
    model = str(ROOT / "examples" / "tiny_lm" / "model")
    command = [
        "generate",
        "in.parquet",
        "--prompt",
        "{{ code }}",
        "--model",
        model,
        "--output",
        "out.parquet",
    ]
    run(str(python / "arctic-batch"), *command, "--temperature", "0", "--max-new-tokens", "24", cwd=work)
    rows = pq.read_table(work / "out.parquet").to_pylist()
    assert len(rows) == 3
    assert all(row["error"] is None and row["response"] for row in rows)
