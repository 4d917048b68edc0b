"""`arctic-doctor --sglang`: the seams against an SGLang that is not installed."""

import importlib
import json
import sys
import zipfile

import pytest

from arctic_sglang import doctor
from arctic_sglang.compat import package, source
from arctic_sglang.compat.seams import SEAMS

SERVER_ARGS = "class ServerArgs:\n    model_path: str = ''\n"


def run(capsys, *args):
    code = doctor.main(list(args))
    return code, capsys.readouterr().out


@pytest.fixture
def tiny(write_tree):
    """A folder with a package `sglang` that has next to nothing of SGLang's."""
    return write_tree(
        {"sglang/srt/server_args.py": SERVER_ARGS, "sglang/_version.py": "__version__ = '9.1'\n"}
    )


def wheel_of(folder, path):
    with zipfile.ZipFile(path, "w") as wheel:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                wheel.write(file, file.relative_to(folder))
    return path


def test_the_tested_release_fits(capsys):
    code, out = run(capsys, "--sglang", str(source.installed_root().parent))
    assert code == 0
    assert "ok   release 0.5.17: tested" in out
    assert "FAIL" not in out
    assert out.rstrip().endswith(f"{len(SEAMS)} of {len(SEAMS)} seams fit")


def test_what_does_not_fit_is_listed_by_feature(capsys, tiny):
    code, out = run(capsys, "--sglang", str(tiny))
    assert code == 1
    assert "FAIL release 9.1: not tested, so a start is refused (SGLang ==0.5.17)" in out
    assert "FAIL flags" in out
    assert "ServerArgs has no tp_size" in out
    assert "ServerArgs has no model_path" not in out
    assert "sglang.srt has no module models" in out


def test_a_tested_release_with_a_changed_name_does_not_fit(capsys, tiny):
    (tiny / "sglang/_version.py").write_text("__version__ = '0.5.17'\n")
    code, out = run(capsys, "--sglang", str(tiny))
    assert code == 1
    assert "ok   release 0.5.17" in out


def test_an_untested_release_does_not_fit_though_its_names_do(monkeypatch, capsys, tiny):
    monkeypatch.setattr(doctor, "SEAMS", [])
    assert run(capsys, "--sglang", str(tiny))[0] == 0
    monkeypatch.setattr(doctor, "SEAMS", [seam for seam in SEAMS if seam.id == "flags.server_args"])
    monkeypatch.setattr(doctor.verify, "misfits", lambda *_: [])
    code, out = run(capsys, "--sglang", str(tiny))
    assert code == 1
    assert "1 of 1 seams fit" in out


def test_a_wheel_is_read_as_its_folder_is(capsys, tiny, tmp_path):
    wheel = wheel_of(tiny, tmp_path / "sglang-9.1.whl")
    said = [json.loads(run(capsys, "--json", "--sglang", str(path))[1]) for path in (tiny, wheel)]
    assert said[1]["path"] == str(wheel)
    assert {**said[0], "path": ""} == {**said[1], "path": ""}
    assert sum(count["seams"] for count in said[0]["fits"].values()) == len(SEAMS)


def test_the_package_itself_may_be_given(capsys, tiny):
    assert "release 9.1" in run(capsys, "--sglang", str(tiny / "sglang"))[1]


def test_the_release_of_metadata_beside_it(capsys, tiny):
    (tiny / "sglang/_version.py").unlink()
    assert "release 0:" in run(capsys, "--sglang", str(tiny))[1], "not that of the installed one"
    info = tiny / "sglang-9.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sglang\nVersion: 9.2\n")
    importlib.invalidate_caches()
    assert "release 9.2" in run(capsys, "--sglang", str(tiny))[1]


def test_nothing_is_imported(tiny, capsys):
    (tiny / "sglang/srt/server_args.py").write_text("raise RuntimeError\n" + SERVER_ARGS)
    before = set(sys.modules)
    assert run(capsys, "--sglang", str(tiny))[0] == 1
    assert not {name for name in set(sys.modules) - before if name.startswith("sglang")}


@pytest.mark.parametrize(
    ("files", "given", "said"),
    [
        ({"other/a.py": ""}, ".", "holds no package sglang"),
        ({"sglang/__init__.py": ""}, ".", "holds no package sglang"),
        ({"a.whl": "no archive"}, "a.whl", "is neither a folder nor a wheel"),
        ({}, "nowhere", "does not exist"),
    ],
)
def test_a_path_without_sglang_is_one_clear_error(write_tree, capsys, files, given, said):
    path = write_tree(files) / given
    with pytest.raises(SystemExit) as stop:
        doctor.main(["--sglang", str(path)])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert f"--sglang: {path} {said}" in error
    assert "wanted: a wheel of SGLang" in error


def test_a_wheel_of_something_else(write_tree, tmp_path):
    wheel = wheel_of(write_tree({"other/a.py": ""}), tmp_path / "other.whl")
    with (
        pytest.raises(package.NoSGLangError, match=r"other\.whl holds no package sglang"),
        package.opened(wheel),
    ):
        pass


def test_not_with_require(tiny, capsys):
    with pytest.raises(SystemExit):
        doctor.main(["--sglang", str(tiny), "--require", "pooling"])
    assert "leave --require out" in capsys.readouterr().err
