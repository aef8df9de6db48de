"""What runs by the clock: the drift report every night, a retrain every week."""

import dagster as dg

from genai_assets.defs.jobs import monitor, retrain

nightly_monitor = dg.ScheduleDefinition(
    name="nightly_monitor",
    job=monitor,
    cron_schedule="0 2 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Look for drift and curate feedback, every night at two.",
)
weekly_retrain = dg.ScheduleDefinition(
    name="weekly_retrain",
    job=retrain,
    cron_schedule="0 3 * * 0",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Retrain on Sundays at three; with nothing new it trains nothing.",
)
SCHEDULES = [nightly_monitor, weekly_retrain]
