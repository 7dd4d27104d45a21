"""The agent's periodic jobs, each class of them on a thread of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from gitops_mcp.agent.pace import Every


def scheduler(
    jobs: Mapping[str, tuple[Callable[[], None], timedelta, datetime]], *, again: Collection[str]
) -> BackgroundScheduler:
    """A scheduler of jobs by name: what is done, how often, and when first. A hanging git server
    must renew no lease late, so none waits for another. Those in ``again`` spread their times, and
    one that is asked for while it runs runs once more.
    """
    made = BackgroundScheduler(
        timezone=UTC,
        executors={name: ThreadPoolExecutor(1) for name in jobs},
        # The defaults would skip a job that is a second late.
        job_defaults={"misfire_grace_time": None, "coalesce": True},
    )
    for name, (job, period, first) in jobs.items():
        made.add_job(
            job,
            # Many agents that were started together do not ask together for ever.
            Every(period.total_seconds(), jitter=name in again),
            # One runs, one waits: what is asked for when another one is about to end would be lost.
            max_instances=2 if name in again else 1,
            next_run_time=first,
            id=name,
            executor=name,
        )
    # That a job still runs when it is due again is no news.
    logging.getLogger("apscheduler").setLevel(logging.ERROR)
    return made
