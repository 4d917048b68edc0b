"""The plugin in real processes: where it is, where it is not, and what it stops."""

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from arctic_sglang.compat import source
from arctic_sglang.compat.seams import seams_of
from arctic_sglang.features import Feature
from arctic_sglang.recommend.__main__ import read_model
from arctic_sglang.recommend.answer import KINDS, Question
from arctic_sglang.recommend.policy import recommend
from arctic_sglang.recommend.show import argv
from tests.engine.servers import running_server

ROOT = Path(__file__).parents[2]
FLAGS = ("--embedding-pooling", "--cpu-threads-per-rank")
RECOMMENDED = (
    "tp_size", "dp_size", "quantization", "is_embedding", "speculative_algorithm", "ulysses_sequence_parallel_size",
    "enable_shift_parallel", "enable_fast_embedding", "embedding_replicas", "enable_suffix_decoding",
    "speculative_draft_model_path", "speculative_disable_by_batch_size",
)  # fmt: skip


def run(*command, env=None, timeout=120):
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **(env or {})},
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def launch(*args, env=None):
    return run(sys.executable, "-m", "sglang.launch_server", *args, env=env)


def broken_sglang(folder: Path, file: str, old: str, new: str) -> dict[str, str]:
    """The environment of a copy of the installed SGLang, of links, with one line of one file changed."""
    copy = folder / "sglang"
    subprocess.run(["cp", "-rs", str(source.installed_root()), str(copy)], check=True)
    path = copy / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.unlink()
    path.write_text(text.replace(old, new), encoding="utf-8")
    return {"PYTHONPATH": str(folder)}


LAUNCH = "import runpy; runpy.run_module('sglang.launch_server', run_name='__main__', alter_sys=True)"
SERVE = "import sys; from sglang.cli.main import main; sys.argv = ['sglang', 'serve', *sys.argv[1:]]; main()"
ARGUMENTS = """
import sys
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.server_args import ServerArgs
print("device", ServerArgs(model_path=sys.argv[1]).device)
"""
PARSE = """
import json, sys
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.server_args import prepare_server_args
found = []
for words in json.loads(sys.argv[1]):
    try:
        arguments = prepare_server_args(words)
        found.append({name: getattr(arguments, name) for name in sys.argv[2:]})
    except (SystemExit, ValueError, AssertionError, RuntimeError) as error:
        found.append(f"{type(error).__name__}: {error}")
print("\\nparsed " + json.dumps(found))
"""


def end(programs, folder, env=None):
    """What became of programs that end by themselves, in forks of one process: exit code and output, by name."""
    folder.mkdir()
    command = [sys.executable, str(Path(__file__).with_name("forks.py")), str(folder)]
    done = subprocess.run(
        command, input=json.dumps(programs), capture_output=True, text=True, timeout=240,
        env={**os.environ, **(env or {})}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    codes = json.loads(done.stdout.splitlines()[-1])
    return {name: (code, (folder / name).read_text()) for name, code in codes.items()}


def unquantised(answer):
    """The recommended flags without fp8, which a machine without a GPU does not serve."""
    return [word for word in argv(answer) if word not in ("--quantization", "fp8")]


@pytest.fixture(scope="module")
def recommended():
    """Answers of `arctic-recommend`, which together have every flag that it ever recommends."""
    configs = ROOT / "tests" / "data" / "configs"
    asked = [
        ("Llama-3.1-8B", 4, "bulk", {"quantization": "fp8"}),
        ("Llama-3.3-70B", 8, "mixed", {"head": str(ROOT / "examples" / "tiny_lm" / "speculator")}),
        ("Qwen3-30B-A3B", 4, "agentic", {}),
        ("arctic-embed-m", 2, "embeddings", {}),
    ]
    return [
        recommend(Question(read_model(str(configs / name)), gpus, 79.1, KINDS[kind], **more))
        for name, gpus, kind, more in asked
    ]


@pytest.fixture(scope="module")
def ended(tiny_model_dir, minilm_dir, recommended, tmp_path_factory):
    """Commands that end by themselves, by name: exit code and output.

    Nearly all of their time is the import of SGLang, on one core; so two processes run at once, one of them with a
    changed SGLang.
    """
    folder, device = tmp_path_factory.mktemp("ended"), ["--device", "cpu"]
    broken = broken_sglang(
        folder, "srt/layers/pooler.py", "class EmbeddingPoolerOutput", "class EmbeddingsOutput"
    )
    whole = {
        "help": (LAUNCH, ["--help"]),
        "not an embedding model": (
            LAUNCH, [*device, "--model-path", tiny_model_dir, "--embedding-pooling", "mean"]
        ),
        "serve": (SERVE, [tiny_model_dir, *device, "--cpu-threads-per-rank", "-3"]),
        "parse": (PARSE, [json.dumps([*map(unquantised, recommended), argv(recommended[0])]), *RECOMMENDED]),
    }  # fmt: skip
    changed = {
        "requested": (LAUNCH, [*device, "--model-path", minilm_dir, "--is-embedding"]),
        "unrequested": (ARGUMENTS, [tiny_model_dir]),
    }
    with ThreadPoolExecutor(2) as pool:
        # The same on every machine: what is recommended does not depend on a GPU that is there.
        one = pool.submit(end, whole, folder / "whole", {"CUDA_VISIBLE_DEVICES": ""})
        other = pool.submit(end, changed, folder / "changed", broken)
        return one.result() | other.result()


def test_flags_are_in_help(ended):
    """Of `sglang serve` too: see test_install."""
    code, out = ended["help"]
    assert code == 0
    assert all(flag in out for flag in FLAGS)


def test_a_bad_flag_stops_the_start(ended):
    code, out = ended["not an embedding model"]
    assert code != 0
    assert "add --is-embedding" in out


@pytest.mark.full  # what argparse refuses; other wrong values of ours are in the unit tests
@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--embedding-pooling", "meen"], "invalid choice: 'meen'"),
        (["--cpu-threads-per-rank", "two"], "invalid int value: 'two'"),
    ],
)
def test_a_value_that_cannot_be_parsed_stops_the_start(tiny_model_dir, args, said):
    code, out = launch("--model-path", tiny_model_dir, "--device", "cpu", *args)
    assert code != 0
    assert said in out


def test_flags_work_on_sglang_serve(ended):
    code, out = ended["serve"]
    assert code != 0
    assert "--cpu-threads-per-rank is -3; it must be at least 1" in out


def test_sglangs_own_parser_takes_what_is_recommended(ended, recommended):
    assert {name for answer in recommended for name in answer.keywords} == set(RECOMMENDED)
    code, out = ended["parse"]
    assert code == 0, out
    (found,) = re.findall(r"^parsed (.*)$", out, re.MULTILINE)
    *served, refused = json.loads(found)
    assert refused.startswith("ValueError: quantization fp8 on a machine without a GPU")
    for answer, parsed in zip(recommended, served, strict=True):
        assert isinstance(parsed, dict), f"{argv(answer)}: {parsed}"
        wanted = {**answer.keywords, "quantization": None}
        sp = wanted.get("ulysses_sequence_parallel_size", 1)  # to SGLang, tp_size is that over all ranks
        wanted["tp_size"] = wanted.get("tp_size", 1) * sp
        assert {name: parsed[name] for name in wanted} == wanted


def test_bad_engine_keyword_stops_the_start(tiny_model_dir):
    import sglang

    with pytest.raises(ValueError, match="--embedding-pooling is 'meen'"):
        sglang.Engine(model_path=tiny_model_dir, embedding_pooling="meen")
    with pytest.raises(TypeError, match="embeding_pooling"):
        sglang.Engine(model_path=tiny_model_dir, embeding_pooling="mean")


def test_a_renamed_target_of_a_requested_feature_stops_the_server(ended):
    code, out = ended["requested"]
    assert code != 0
    assert "arctic-sglang cannot provide what was asked for (pooling)" in out
    assert "has no EmbeddingPoolerOutput" in out
    assert "arctic-doctor" in out


@pytest.mark.full  # what is found wrong is in the unit tests; that it stops a server is above
def test_a_changed_parameter_of_a_requested_feature_stops_the_server(tiny_model_dir, tmp_path):
    file, old, new = (
        "srt/distributed/parallel_state.py", "        use_pynccl: bool,\n", "        use_nccl: bool,\n"
    )  # fmt: skip
    env = broken_sglang(tmp_path, file, old, new)
    code, out = launch("--model-path", tiny_model_dir, "--device", "cpu", env=env)
    assert code != 0
    assert "has no parameter use_pynccl" in out


@pytest.mark.full  # the same
def test_another_version_stops_whoever_gives_a_flag(tiny_model_dir, tmp_path):
    env = broken_sglang(tmp_path, "_version.py", "'0.5.17'", "'0.5.18'")
    code, out = launch("--model-path", tiny_model_dir, "--cpu-threads-per-rank", "1", env=env)
    assert code != 0
    assert "tested with SGLang ==0.5.17, and 0.5.18 is installed" in out


def test_an_unrequested_broken_seam_only_warns(ended):
    code, out = ended["unrequested"]
    assert code == 0, out
    assert "device cpu" in out
    assert "pooling is not available" in out


def test_hooks_reach_every_process(tiny_model_dir, functions, tmp_path):
    reports = tmp_path / "reports"
    reports.mkdir()
    args = [
        "--model-path",
        tiny_model_dir,
        "--device",
        "cpu",
        "--dp-size",
        "2",
        "--tokenizer-worker-num",
        "2",
    ]
    env = {
        "ARCTIC_SGLANG_REPORT_DIR": str(reports),
        # uvicorn kills a worker that does not answer for so long, and while SGLang is imported none answers.
        "SGLANG_UVICORN_WORKER_HEALTHCHECK_TIMEOUT": "240",
    }
    with running_server(args, tmp_path / "server.log", env) as server:
        answer = server.client().chat.completions.create(
            model="m", messages=[{"role": "user", "content": functions[0]}], max_tokens=8
        )
        assert answer.choices[0].message.content
        deadline = time.monotonic() + 240  # the second tokenizer worker may still be importing
        while len(list(reports.glob("tokenizer-*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.5)
        found = [json.loads(path.read_text()) for path in reports.iterdir()]
    roles = Counter(report["role"] for report in found)
    assert roles["main"] == 1
    assert roles["scheduler"] == 2
    assert roles["controller"] == 1
    assert roles["detokenizer"] >= 1
    assert roles["tokenizer"] >= 2
    for report in found:
        assert report["features"] == ["cpu"]
        assert ("cpu.group" in report["seams"]) == (report["role"] == "scheduler")


STOCK = """
import json, sys
import sglang.srt.plugins as plugins
plugins._plugins_loaded = {stock}  # what SGLANG_PLUGINS would do, but for the platform that a CPU needs
import sglang

if __name__ == "__main__":
    engine = sglang.Engine(
        model_path={model!r}, device="cpu", attention_backend="torch_native", dtype="float32",
        mem_fraction_static=0.3, max_total_tokens=32768, max_running_requests=64, disable_hybrid_swa_memory=True,
    )
    prompts = json.load(open({prompts!r}))
    answers = engine.generate(prompts, {{"temperature": 0, "max_new_tokens": 24}}, return_logprob=True)
    args = type(engine.server_args).__name__
    rows = [[a["text"], [round(p, 4) for p, _, _ in a["meta_info"]["output_token_logprobs"]]] for a in answers]
    json.dump({{"args": args, "rows": rows}}, open({out!r}, "w"))
    engine.shutdown()
"""


def test_no_flag_leaves_stock_sglang_alone(tiny_model_dir, functions, tmp_path):
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps(functions[:6]))

    def answers(stock):
        reports = tmp_path / f"reports-{stock}"
        reports.mkdir()
        out, program = tmp_path / f"{stock}.json", tmp_path / f"program_{stock}.py"
        program.write_text(
            STOCK.format(stock=stock, model=tiny_model_dir, prompts=str(prompts), out=str(out))
        )
        code, log = run(
            sys.executable, str(program), timeout=300, env={"ARCTIC_SGLANG_REPORT_DIR": str(reports)}
        )
        assert code == 0, log[-3000:]
        return json.loads(out.read_text())

    with ThreadPoolExecutor(2) as pool:  # each imports SGLang on one core for a while
        without, ours = pool.map(answers, (True, False))
    assert without["args"] == "ServerArgs"
    assert ours["args"] == "ArcticServerArgs"
    assert without["rows"] == ours["rows"]
    reports = [json.loads(p.read_text()) for p in (tmp_path / "reports-False").iterdir()]
    assert list((tmp_path / "reports-True").iterdir()) == []
    applied = {seam for report in reports for seam in report["seams"]}
    cpu = {seam.id for seam in seams_of(frozenset({Feature.CPU})) if seam.hook}
    assert applied == {"flags.help", "flags.server_args", "flags.engine"} | cpu


def test_console_scripts_exist():
    for name in ("arctic-batch", "arctic-doctor", "arctic-recommend"):
        code, out = run(str(Path(sys.executable).with_name(name)), "--help")
        assert code == 0, out
        assert out.startswith(f"usage: {name}")
