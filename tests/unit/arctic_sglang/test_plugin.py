"""The entry points, where the installed SGLang does not fit or another plugin is first."""

import sys

import pytest

from arctic_sglang import env, plugin
from arctic_sglang.compat.verify import SeamError


@pytest.fixture
def broken(monkeypatch):
    def fail(*_):
        msg = "hooks are not in place"
        raise SeamError(msg)

    monkeypatch.setattr(plugin.apply, "apply", fail)


def test_without_a_flag_stock_sglang_starts(broken, monkeypatch, caplog):
    monkeypatch.setattr(sys, "argv", ["launch_server", "--model-path", "m"])
    plugin.register()
    assert "adds no flags, and stock SGLang starts: hooks are not in place" in caplog.text


@pytest.mark.parametrize("flag", ["--embedding-pooling", "--cpu-threads-per-rank=2"])
def test_with_a_flag_the_process_ends(broken, monkeypatch, flag):
    monkeypatch.setattr(sys, "argv", ["launch_server", flag])
    with pytest.raises(SystemExit) as stop:
        plugin.register()
    assert "hooks are not in place" in str(stop.value)


def test_the_platform_does_not_hang_on_the_help_page(broken, monkeypatch):
    monkeypatch.setattr(plugin.vendor, "accelerator", lambda: None)
    assert plugin.platform() == "arctic_sglang.cpu.platform:CpuPlatform"


def test_an_accelerator_keeps_sglangs_own_platform(monkeypatch):
    monkeypatch.setattr(plugin.vendor, "accelerator", lambda: "cuda")
    assert plugin.platform() is None


def test_sglangs_own_cpu_engine_keeps_its_platform(monkeypatch):
    monkeypatch.setattr(plugin.vendor, "accelerator", lambda: None)
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "1")
    assert plugin.platform() is None


def test_choices_without_a_clock_are_asked_for_by_name(monkeypatch):
    monkeypatch.delenv("ARCTIC_SGLANG_UNTIMED", raising=False)
    assert not env.untimed()
    monkeypatch.setenv("ARCTIC_SGLANG_UNTIMED", "1")
    assert env.untimed()
    monkeypatch.setenv("ARCTIC_SGLANG_UNTIMED", "yes")
    with pytest.raises(ValueError, match="ARCTIC_SGLANG_UNTIMED='yes'"):
        env.untimed()
