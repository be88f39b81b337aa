"""From a model and a task to a certified artifact or an honest abstention: collect, fit, calibrate, evaluate, publish."""

from merasteer.pipeline.job import Job, Loading, prepare
from merasteer.pipeline.options import GRIDS, STAGES, Options, Stage
from merasteer.pipeline.page import write_page
from merasteer.pipeline.progress import Bars
from merasteer.pipeline.recertify import Renewal, recertify, renewals
from merasteer.pipeline.report import Report, read_report, write_report
from merasteer.pipeline.run import run, run_job, stages
from merasteer.pipeline.stopping import attended, quiet
from merasteer.pipeline.summary import summary

__all__ = [
    "GRIDS",
    "STAGES",
    "Bars",
    "Job",
    "Loading",
    "Options",
    "Renewal",
    "Report",
    "Stage",
    "attended",
    "prepare",
    "quiet",
    "read_report",
    "recertify",
    "renewals",
    "run",
    "run_job",
    "stages",
    "summary",
    "write_page",
    "write_report",
]
