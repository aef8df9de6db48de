"""Pictures in: records, sources, decoding, licences, expectations, captions, splits. Knows no model and no Dagster."""
