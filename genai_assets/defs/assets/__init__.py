"""The assets, one file a stage of the model's life: the map of the graph."""
