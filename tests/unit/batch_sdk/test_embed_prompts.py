"""A checkpoint's prompts in front of the texts of an embed job."""

import pyarrow as pa
import pytest

import batch_sdk
from arctic_sglang.embedding.checkpoint import PoolingSpec
from batch_sdk.chunks import Tally
from batch_sdk.engines.base import EngineInfo
from batch_sdk.errors import OptionError
from batch_sdk.job import EmbedJob
from batch_sdk.manifest import describe_job, differences
from batch_sdk.plan import EmbedPlan
from batch_sdk.sources import open_source

TABLE = pa.table({"text": ["a", None, ""]})
PROMPTS = {"query": "query: ", "document": ""}


def sent(prompt_name, checkpoint):
    """The texts that an engine with this checkpoint is asked for."""
    job = EmbedJob(model="m", column="text", prompt_name=prompt_name)
    plan = EmbedPlan(job, TABLE.schema)
    _, make_chunk = plan.bind(EngineInfo("m", embedding_size=4, checkpoint=checkpoint), Tally())
    (request,) = make_chunk(0, TABLE.to_batches()[0]).take(3)
    return request.texts


@pytest.mark.parametrize(
    ("name", "default", "texts"),
    [
        ("query", None, ["query: a", "query: "]),
        ("document", "query", ["a", ""]),
        (None, "query", ["query: a", "query: "]),
        (None, None, ["a", ""]),
    ],
)
def test_what_goes_in_front(name, default, texts):
    assert sent(name, PoolingSpec("mean", True, prompts=PROMPTS, default_prompt_name=default)) == texts


def test_no_name_and_no_checkpoint():
    assert sent(None, None) == ["a", ""]


def test_an_unknown_name():
    with pytest.raises(OptionError, match=r"prompt_name='passage'.*it has: 'query', 'document'"):
        sent("passage", PoolingSpec("mean", True, prompts=PROMPTS))


def test_an_engine_that_reads_no_checkpoint():
    with pytest.raises(OptionError, match=r"knows no prompts of the model 'm'.*engine 'sglang'"):
        batch_sdk.embed(TABLE, column="text", model="m", engine="dummy", prompt_name="query", progress=False)


@pytest.mark.parametrize("bad", ["", 3, ["query"]])
def test_nonsense(bad):
    with pytest.raises(OptionError, match="prompt_name="):
        EmbedJob(model="m", column="text", prompt_name=bad)


def test_another_prompt_is_another_job():
    source = open_source(TABLE)
    jobs = [EmbedJob(model="m", column="text", prompt_name=name) for name in (None, "query")]
    then, now = (
        describe_job(job, source, engine="sglang", engine_options={}, rows_per_file=9) for job in jobs
    )
    assert differences(then, now) == ["prompt_name was not given and is 'query'"]
