"""A team's image model as one Dagster asset graph: from its pictures to a service that stays good.

::

    sources -> raw_data -> validated_data -> image_features -> duplicate_clusters -> splits -> training_cache -+
                                                                                         |         base_model -+
                                            (data_readiness_report, dataset_card) <------+                     |
                                                                                                       fine_tuned_model
                                                                                                               |
                                                                                                       (distilled_model)
                                                                                                               |
                                                                                                          eval_report
                                                                                                               | (gate)
                                                              (synthetic_pictures) <------------------- champion_model
                                                                                                               |
                                                                                                         bento_service
                                                                                                               | HTTP
                                            feedback_dataset <- feedback_events       drift_report <- inference_log

Sensors (new data, feedback, drift) ask for the next retrain; no edge leads back.

Rooms, each with one job: ``datasets`` (pictures in), ``diffusion`` (train and draw), ``evaluation`` (measure and
decide), ``registry`` (which model is champion), ``serving`` (HTTP), ``monitoring`` (drift, feedback, when to retrain),
``ui`` (the page), ``defs`` (Dagster). Everything the graph does can be done from Python without Dagster.
"""

__version__ = "0.1.0"

from genai_assets.privacy import turn_telemetry_off as _turn_telemetry_off

_turn_telemetry_off()
