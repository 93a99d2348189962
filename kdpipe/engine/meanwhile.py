"""A training that another process has finished while this one waited for it.

Snakemake that was killed leaves its trainings running; started again, it starts them once more.
"""

from __future__ import annotations

import json
import logging

from kdpipe.atomic import mark_of
from kdpipe.engine.jobs import Job, training_digest
from kdpipe.engine.state import weights_digest
from kdpipe.infer.model import read_tensors

log = logging.getLogger(__name__)


def trained_meanwhile(job: Job) -> bool:
    """Say whether the results of this very training came since `job.before`, and are whole."""
    if not job.wait or mark_of(job.model) in (None, job.before):
        return False
    try:
        facts = json.loads(job.model.with_name("model.json").read_text(encoding="utf-8"))
        content = read_tensors(job.model)
        same = (
            facts["training_sha256"] == training_digest(job)
            and facts["weights_sha256"] == weights_digest(content["weights"])
            and (content["run"], content["preparation"]) == (job.run, job.preparation)
            and job.model.with_name("train.csv").is_file()
        )
    except (OSError, ValueError, LookupError, TypeError):
        return False
    if same:
        log.info("another process has finished this training meanwhile; its results are kept")
    return same
