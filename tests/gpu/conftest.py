"""Where there is one GPU, ranks of every engine share it."""

from pathlib import Path

import pytest

from tests.engine.servers import added_plugin
from tests.gpu import gpus


@pytest.fixture(scope="session", autouse=True)
def ranks_share_one_gpu():
    if not gpus.SHARED:
        yield
        return
    with pytest.MonkeyPatch.context() as patch, added_plugin(Path(__file__).with_name("shared_gpu")):
        for name, value in gpus.ENVIRONMENT.items():
            patch.setenv(name, value)
        yield
