"""Dagster: thin definitions that narrate the graph and call the library. No other room knows Dagster."""
