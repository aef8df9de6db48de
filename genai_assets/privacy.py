"""No library phones home: the switches of every one of them, set before it is imported.

Belongs here: environment defaults that concern telemetry. A value the user set is left alone.
"""

import os

TELEMETRY_OFF = {
    "DAGSTER_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GX_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "BENTOML_DO_NOT_TRACK": "True",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
}


def turn_telemetry_off() -> None:
    """Set every telemetry switch that is not set yet, for this process and the ones it starts."""
    for name, value in TELEMETRY_OFF.items():
        os.environ.setdefault(name, value)
