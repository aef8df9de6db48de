"""The stage of serving: bento_service."""

from pathlib import Path
from typing import Any

from genai_assets.artifacts import Artifact
from genai_assets.settings import Settings
from genai_assets.stages.evaluation import FEW_STEPS
from genai_assets.stages.ground import artifact_store, made_from


def bento_service(settings: Settings, champion: Artifact) -> Artifact:
    """The champion as a Bento that was started, asked for a picture over HTTP, and stopped; its student is in it, too.

    Raises:
        PackagingError: BentoML refused to build.
        ServiceFailed: the service did not start, or did not draw.
    """
    from genai_assets.serving.packaging import build_bento, code_version, smoke_test

    def make(out: Path) -> dict[str, Any]:
        facts = champion.summary
        student = facts[FEW_STEPS]
        bento = build_bento(
            Path(facts["path"]), facts["model_version"], settings, Path(student["path"]) if student else None
        )
        tried = smoke_test(bento, settings, SMOKE_TEST_PROMPT)
        (out / "smoke_test.png").write_bytes(tried.png)
        return {
            "tag": bento.tag,
            "path": str(bento.path),
            "megabytes": round(bento.size / 1e6, 1),
            "model_version": bento.model_version,
            FEW_STEPS: student["model_version"] if student else None,
            "smoke_test_prompt": SMOKE_TEST_PROMPT,
            "smoke_test_ms": tried.latency_ms,
        }

    inputs = made_from(
        "bento_service",
        model=champion.summary["model_version"],
        few_steps=champion.summary[FEW_STEPS],
        package=code_version(),
        sampling=settings.sampling.model_dump(mode="json"),
    )
    store = artifact_store(settings)
    built = store.find("bento_service", inputs)
    # The Bento itself lies in BentoML's store, from which it may have been removed since.
    lost = built is not None and not Path(built.summary["path"]).is_dir()
    return store.build("bento_service", inputs, make, fresh=lost)


SMOKE_TEST_PROMPT = "red apple"
