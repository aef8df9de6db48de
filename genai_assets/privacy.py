"""No library phones home: the switches of every one of them, set before it is imported.

Belongs here: environment defaults that concern telemetry, and modules that have no switch and are kept from being
imported. A value the user set is left alone.
"""

import os
import sys

TELEMETRY_OFF = {
    "DAGSTER_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GX_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "BENTOML_DO_NOT_TRACK": "True",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
}

KEPT_OUT = ("openvino_telemetry",)
"""OpenVINO reports its own import and every conversion, and asks nobody; where this module is missing, it does not."""


def turn_telemetry_off() -> None:
    """Set every telemetry switch that is not set yet, for this process and the ones it starts.

    In this process, importing a module of ``KEPT_OUT`` is an ``ImportError`` from now on.
    """
    for name, value in TELEMETRY_OFF.items():
        os.environ.setdefault(name, value)
    for name in KEPT_OUT:
        sys.modules[name] = None  # type: ignore[assignment]  # Python's own way to say that there is no such module
