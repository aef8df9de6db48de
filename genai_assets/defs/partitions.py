"""Batches of raw data as Dagster's partitions: each arrival is one, and is added when it is asked for or was made.

Belongs here: the partitions and how a run without a key names its own. What a batch is, ``datasets.ingestion`` says.

Only raw_data is partitioned: what comes after it is made of all that lives, so it reads the newest batch, whichever key
a run was started with. A run needs no key: raw_data then takes in what has arrived, and adds the batch under its name.
"""

import dagster as dg

from genai_assets.artifacts import Artifact

BATCHES = dg.DynamicPartitionsDefinition(name="batches")


def name_partition(context: dg.AssetExecutionContext, made: "dg.MaterializeResult[Artifact]") -> None:
    """Add the batch that a run without a key has made to the partitions, and tell that it is materialized."""
    name = made.value.summary["batch"]
    assert BATCHES.name is not None
    context.instance.add_dynamic_partitions(BATCHES.name, [name])
    tags = {"dagster/data_version": made.value.data_version}
    context.log_event(
        dg.AssetMaterialization(context.asset_key, partition=name, metadata=dict(made.metadata or {}), tags=tags)
    )
