"""What is looked at while a job runs, if asked: a report at its end, metrics meanwhile."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from batch_sdk.engines.base import Engine
from batch_sdk.figures import Figures
from batch_sdk.job import Job
from batch_sdk.report import Report, check_name
from batch_sdk.report.facts import describe_run
from batch_sdk.report.recorder import Recorder
from batch_sdk.sinks.base import Sink
from batch_sdk.sources.base import Source


@dataclass(frozen=True, kw_only=True)
class Look:
    """How somebody wants to look at a run. None of it changes the output.

    Attributes:
        progress: see `Progress`.
        report: path of the report's files without their endings; None for no report.
        metrics_port: where Prometheus is served; None for nowhere.
        engine_options: what the report says of the engine.

    Raises:
        OptionError: a name or port that makes no sense.
    """

    progress: bool | None = None
    report: str | os.PathLike[str] | None = None
    metrics_port: int | None = None
    engine_options: Mapping[str, Any] | None = field(default=None)

    def __post_init__(self) -> None:
        if self.report is not None:
            check_name(self.report)
        if self.metrics_port is not None:
            from batch_sdk.metrics import check_port  # only those who ask for it wait for the import

            check_port(self.metrics_port)

    def watch(
        self, stack: ExitStack, job: Job, source: Source, sink: Sink, engine: Engine, figures: Figures
    ) -> Recorder | None:
        """Begin what was asked for, to end when the stack is left.

        Args:
            stack: left when the run is over, however it ends.
            job: that runs.
            source: its input.
            sink: its output, prepared.
            engine: that was asked for.
            figures: of the run.

        Returns:
            Who wants to see the output batches, if anybody does.

        Raises:
            OptionError: the port is taken.
            OutputError: the report cannot be written where it should go.
        """
        if self.report is None and self.metrics_port is None:
            return None
        facts = describe_run(job, source, sink, engine, self.engine_options or {})
        recorder = report = None
        if self.report is not None:
            recorder = Recorder(figures.tally, job.details_prefix, sink.input_row)
            report = Report(self.report, facts, figures, recorder)
        if self.metrics_port is not None:
            from batch_sdk.metrics import serving

            stack.enter_context(serving(self.metrics_port, figures, facts))
        if report is not None:
            # Last, so that an older report outlives a port that is taken.
            stack.enter_context(report)
        return recorder
