"""The examples run; SGLang's part of them is run by tests/engine and `make demo`."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_batch_with_the_dummy_engine():
    command = [sys.executable, str(ROOT / "examples" / "batch.py"), "--engine", "dummy", "--rows", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "is_palindrome" in done.stdout
    assert "shape: (5, 2)" in done.stdout
