"""Hooks in a process: applied once, seen on the target, and never believed unseen."""

import sys
import types

import pytest

from arctic_sglang.compat import apply
from arctic_sglang.compat.seams import Kind, Role, Seam
from arctic_sglang.compat.verify import SeamError
from arctic_sglang.features import Feature


def double(*args, **kwargs):
    return (args[0] * 2, *args[1:]), kwargs


@pytest.fixture
def target(monkeypatch):
    module = types.ModuleType("fake_sglang")
    exec("def size(n): return n\nclass Box:\n    shape = 1\n", module.__dict__)  # a module made of text
    monkeypatch.setitem(sys.modules, "fake_sglang", module)
    registry = apply.vendor.HookRegistry
    monkeypatch.setattr(registry, "_hooks", type(registry._hooks)(list))
    monkeypatch.setattr(registry, "_patched", set())
    monkeypatch.setattr(apply, "_applied", {})
    monkeypatch.setitem(sys.modules, "fake_hooks", sys.modules[__name__])
    return module


def seam(target="fake_sglang.size", kind=Kind.BEFORE, hook="fake_hooks:double", **more):
    return Seam(id=f"x.{target}", target=target, kind=kind, feature=Feature.CPU, why="", hook=hook, **more)


def test_applied_and_seen(target):
    apply.apply([seam()], Role.MAIN)
    assert target.size(4) == 8
    assert apply.applied() == ("x.fake_sglang.size",)


def test_twice_is_once(target):
    apply.apply([seam()], Role.MAIN)
    apply.apply([seam()], Role.MAIN)
    assert target.size(4) == 8


def test_other_processes_are_left_alone(target):
    apply.apply([seam(roles=frozenset({Role.SCHEDULER}))], Role.MAIN)
    assert target.size(4) == 4
    assert apply.applied() == ()


def test_attribute_is_set(target):
    apply.apply([seam("fake_sglang.Box.shape", Kind.SET)], Role.MAIN)
    assert target.Box.shape is double


def test_what_sglang_swallows_is_raised(target):
    # SGLang refuses to wrap a class, logs that, and goes on.
    with pytest.raises(SeamError, match=r"x.fake_sglang.Box: before on fake_sglang.Box"):
        apply.apply([seam("fake_sglang.Box")], Role.SCHEDULER)
    assert apply.applied() == ()


def test_a_target_taken_by_another_plugin_is_raised(target):
    registry = apply.vendor.HookRegistry
    registry.register("fake_sglang.size", lambda *a, **k: None, apply.vendor.HookType.BEFORE)
    registry.apply_hooks()
    with pytest.raises(SeamError, match="another plugin may hold the same target"):
        apply.apply([seam()], Role.SCHEDULER)


def test_undone_is_noticed(target):
    original = target.size
    apply.apply([seam()], Role.MAIN)
    target.size = original
    with pytest.raises(SeamError):
        apply.assert_applied([seam()])
