"""Stream tables of any size through a language model: Arrow or Polars in, typed columns out.

import batch_sdk

table = batch_sdk.generate(frame, prompt="Summarise: {{ body }}", model="path/of/model", max_new_tokens=64)
batch_sdk.embed("docs/*.parquet", column="body", model="path/of/model", output="vectors.parquet")

Polars' frames have both as a namespace: frame.arctic.generate(...), lazy_frame.arctic.embed(...).
"""

from __future__ import annotations

from batch_sdk import polars_ns as polars_ns  # registers the namespace
from batch_sdk.api import embed, generate
from batch_sdk.engines import Engine, create_engine
from batch_sdk.errors import (
    BatchError,
    ColumnError,
    EngineError,
    OptionError,
    OutputError,
    PromptError,
    RowErrorKind,
    SourceError,
)
from batch_sdk.estimate import Estimate, estimate
from batch_sdk.job import EmbedJob, GenerateJob
from batch_sdk.openai_batch import run_openai_batch
from batch_sdk.outputs import JobStatus, resume, status
from batch_sdk.sampling import SamplingParams
from batch_sdk.summary import BatchResult, JobSummary

__all__ = [
    "BatchError",
    "BatchResult",
    "ColumnError",
    "EmbedJob",
    "Engine",
    "EngineError",
    "Estimate",
    "GenerateJob",
    "JobStatus",
    "JobSummary",
    "OptionError",
    "OutputError",
    "PromptError",
    "RowErrorKind",
    "SamplingParams",
    "SourceError",
    "create_engine",
    "embed",
    "estimate",
    "generate",
    "resume",
    "run_openai_batch",
    "status",
]
