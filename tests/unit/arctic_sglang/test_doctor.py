"""arctic-doctor answers on any machine, a broken one above all."""

import json

import pytest

from arctic_sglang import doctor
from arctic_sglang.compat import source
from arctic_sglang.features import Feature


def run(capsys, *args):
    code = doctor.main(list(args))
    return code, capsys.readouterr().out


def test_healthy_here(capsys):
    code, out = run(capsys)
    assert code == 0
    assert out.rstrip().endswith("healthy")
    assert "sglang 0.5.17" in out
    assert "flags.server_args" in out


def test_json(capsys):
    code, out = run(capsys, "--json", "--require", "pooling")
    report = json.loads(out)
    assert code == 0
    assert report["healthy"]
    assert {f["name"] for f in report["features"] if f["wanted"]} >= {"flags", "pooling"}
    assert all(seam["problems"] == [] for seam in report["seams"])


def test_without_sglang(capsys, monkeypatch):
    monkeypatch.setattr(source, "installed_root", lambda: None)
    code, out = run(capsys)
    assert code == 1
    assert "SGLang is not installed" in out


def test_broken_seam_of_an_unrequested_feature_is_no_failure(capsys, monkeypatch, write_tree):
    root = source.installed_root()
    find = source.find

    def without_pooler(folder, dotted):
        if "ModelRunner" in dotted:
            msg = "sglang.srt.model_executor.model_runner has no ModelRunner"
            raise source.NotFoundError(msg)
        return find(root, dotted)

    monkeypatch.setattr(source, "find", without_pooler)
    code, out = run(capsys)
    assert code == 0
    assert "FAIL pooling.model" in out
    assert run(capsys, "--require", "pooling")[0] == 1


def test_torch_that_does_not_load(capsys, monkeypatch):
    def fail():
        msg = "libtorch.so: cannot open shared object file"
        raise OSError(msg)

    monkeypatch.setattr(doctor.vendor, "accelerator", fail)
    code, out = run(capsys)
    assert "torch does not load: OSError: libtorch.so" in out
    assert code in (0, 1)


def test_a_probe_that_raises_is_a_finding(monkeypatch):
    monkeypatch.setattr(doctor.verify, "verify", lambda *_: 1 / 0)
    report = doctor.examine()
    assert not report.healthy
    assert any("ZeroDivisionError" in note for note in report.notes)


def test_filters_are_explained(capsys, monkeypatch):
    monkeypatch.setenv("SGLANG_PLUGINS", "other")
    assert "keeps the plugin from loading" in run(capsys)[1]


def test_cpu_is_wanted_where_there_is_nothing_else(monkeypatch):
    monkeypatch.setattr(doctor.vendor, "accelerator", lambda: None)
    assert [f["wanted"] for f in doctor.examine().features if f["name"] == Feature.CPU] == [True]


def test_gpus_are_listed(monkeypatch):
    monkeypatch.setattr(doctor.vendor, "accelerator", lambda: "cuda")
    monkeypatch.setattr(doctor.vendor, "cuda_devices", lambda: ["NVIDIA Test, 80 GiB, sm_90"])
    report = doctor.examine(frozenset({Feature.CPU}))
    assert report.accelerators == ["NVIDIA Test, 80 GiB, sm_90"]
    assert not report.healthy, "the CPU runtime was required beside a GPU"


@pytest.mark.parametrize("args", [["--require", "nonsense"]])
def test_unknown_feature_exits_2(args):
    with pytest.raises(SystemExit) as stop:
        doctor.main(args)
    assert stop.value.code == 2
