"""From the champion to an endpoint: bento_service."""

import dagster as dg

from genai_assets import stages
from genai_assets.artifacts import Artifact
from genai_assets.defs.narration import picture, result
from genai_assets.settings import Settings

GROUP = "serving"


@dg.asset(group_name=GROUP, code_version=stages.CODE_VERSIONS["bento_service"], kinds={"bentoml"})
def bento_service(settings: dg.ResourceParam[Settings], champion_model: Artifact) -> dg.MaterializeResult[Artifact]:
    """The champion as a Bento that was started, asked for a picture over HTTP, looked at, and stopped."""
    artifact = stages.bento_service(settings, champion_model)
    return result(artifact, {"smoke_test": picture(artifact.file("smoke_test.png"), alt="the smoke test's picture")})
