"""Drawing in a few steps: a distilled student against a diffusers UNet of equal size at its teacher's guided steps.

Ours is ``sampling.Drawer`` with its default backend, in the shape of the embedded base: 4 steps, no guidance, as a
student of ``genai_assets.diffusion.distillation`` is drawn. The peer is that of ``benchmarks.drawing``, drawn as the
student's teacher is, 30 steps with guidance: it is timed with 8, and its time is in proportion to its steps, for it has
no autoencoder and its prompts are encoded beforehand.

Weights are random on both sides, as speed does not depend on them. Where the home has an evaluated student, its KID and
its teacher's are told; the peer's UNet was never trained.
"""

import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import drawing
from genai_assets.diffusion import sampling

GOAL = 30.0
STEPS, TEACHER_STEPS = 4, 30


def kid_at_hand() -> str:
    """The figures of the home's newest evaluation that has a student, in words."""
    from genai_assets import stages
    from genai_assets.settings import Settings

    report = stages.artifact_store(Settings()).newest("eval_report")
    if report is None or stages.FEW_STEPS not in report.summary["models"]:
        return "no evaluated student at hand, hence no KID"
    metrics = stages.read_metrics(report)
    student, teacher = (metrics["models"][name] for name in (stages.FEW_STEPS, "fine_tuned"))
    sampler = metrics["provenance"]
    return (
        f"KID of the newest student, {metrics['provenance']['distillation']['drawing_steps']} steps: "
        f"{student['kid']:.3f} ± {student['kid_standard_error']:.3f}; of its teacher, {sampler['sampling_steps']} "
        f"steps with guidance {sampler['guidance_scale']:g}: {teacher['kid']:.3f} ± {teacher['kid_standard_error']:.3f}"
    )


def main() -> None:
    """Measure and print the result as JSON."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(os.cpu_count() or 1)
    asked: dict[str, Any] = {"seeds": range(drawing.BATCH), "steps": STEPS, "guidance_scale": 1.0}
    with tempfile.TemporaryDirectory(prefix="converted-") as cache:
        drawer = sampling.Drawer(
            drawing.our_pipeline(), drawing.CPU, dtype=torch.bfloat16, backend="auto", cache=Path(cache)
        )
        drawer.make_ready(drawing.BATCH, guidance_scale=1.0)
        rates = drawing.race({"ours": lambda: drawer.draw(drawing.PROMPTS, **asked), "pixels": drawing.pixel_peer()})
    slower = TEACHER_STEPS / drawing.STEPS
    sizes = [drawing.parameters(drawer.family.denoiser), drawing.parameters(drawing.new_unet(drawing.SIDE, 3, 6))]
    result = {
        "name": (
            f"64-pixel pictures a second, {STEPS} steps against {TEACHER_STEPS} with guidance "
            f"({torch.get_num_threads()} threads)"
        ),
        "ours": round(statistics.median(rates["ours"]), 3),
        "peer": round(statistics.median(rates["pixels"]) / slower, 4),
        "ratio": round(drawing.ratio(rates, "pixels") * slower, 1),
        "goal": GOAL,
        "quality": (
            f"{drawer.computes}; parameters {sizes[0] / 1e6:.1f} M, peer's {sizes[1] / 1e6:.1f} M, untrained; "
            f"{kid_at_hand()}"
        ),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
