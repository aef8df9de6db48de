"""The gate: whether a challenger replaces the champion. Pure functions; nothing is read or written.

Belongs here: the rules, in an order a person can follow, and the reason in words. Measuring is ``evaluate``; moving the
champion pointer is the registry's.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from genai_assets.settings import PromotionPolicy


@dataclass(frozen=True)
class Figures:
    """What the gate looks at, of one model in one evaluation.

    Attributes:
        kid: kernel inception distance to the real held-out pictures; lower is better.
        kid_standard_error: of ``kid``; told in the reason, not used.
        recall_at_1, recall_at_5: agreement with the prompt, in [0, 1]; higher is better.
        copied_share: share of near-copies of training pictures, in [0, 1].
        pictures_are_not_blank, pictures_vary: signs that the model works at all.
        base_kid: KID of the base model in the same evaluation; not a number when it was not measured.
        measured_on: names concepts, real pictures and extractors; only equal ones compare.
    """

    kid: float
    kid_standard_error: float
    recall_at_1: float
    recall_at_5: float
    copied_share: float
    pictures_are_not_blank: bool
    pictures_vary: bool
    base_kid: float
    measured_on: str

    @classmethod
    def from_metrics(cls, result: Mapping[str, Any], model: str = "fine_tuned") -> "Figures":
        """The figures of one model from what ``evaluate`` returned or wrote as ``metrics.json``.

        A figure that is absent or null becomes not-a-number, which the gate takes for broken, never for good.

        Raises:
            ValueError: the evaluation has no such model.
        """
        models = result.get("models", {})
        if model not in models:
            raise ValueError(f"the evaluation has no model {model!r}; it has: {', '.join(models) or 'none'}")
        of = models[model]
        return cls(
            **{
                name: _number(of.get(name))
                for name in ("kid", "kid_standard_error", "recall_at_1", "recall_at_5", "copied_share")
            },
            pictures_are_not_blank=of.get("pictures_are_not_blank") is True,
            pictures_vary=of.get("pictures_vary") is True,
            base_kid=_number(models.get("base", {}).get("kid")),
            measured_on=str(result.get("measured_on", "")),
        )


@dataclass(frozen=True)
class Decision:
    """What the gate decided.

    Attributes:
        promote: the challenger becomes champion.
        reason: why, with the figures; one sentence for people.
        broken: the challenger must not be used at all. A model that is merely not better is not broken.
    """

    promote: bool
    reason: str
    broken: bool = False


def faults(figures: Figures, policy: PromotionPolicy) -> list[str]:
    """What makes a model unfit for use, each in words; empty for a sound model."""
    found = []
    judged = ("kid", "recall_at_1", "recall_at_5", "copied_share")
    if odd := [name for name in judged if not math.isfinite(getattr(figures, name))]:
        found.append(f"these figures are missing or not finite: {', '.join(odd)}")
    if not figures.pictures_are_not_blank:
        found.append("most of its pictures are blank")
    if not figures.pictures_vary:
        found.append("its pictures are the same whatever the prompt")
    if figures.copied_share > policy.max_copied_share:
        found.append(
            f"{figures.copied_share:.0%} of its pictures nearly copy a training picture "
            f"({policy.max_copied_share:.0%} are allowed)"
        )
    return found


def decide(challenger: Figures, champion: Figures | None, policy: PromotionPolicy) -> Decision:
    """Decide whether the challenger replaces the champion.

    In this order: a broken challenger is refused. Without a champion (or when the champion's own figures are broken),
    it must be nearer to the real pictures than the base model. Else both must have been measured on the same pictures;
    KID must fall by more than ``min_kid_improvement``, and R@5 may fall by at most ``max_agreement_loss``.

    Args:
        challenger: figures of the new model.
        champion: figures of the model in use, measured anew on the same held-out pictures; None when there is none.
        policy: the limits.
    """
    if found := faults(challenger, policy):
        return Decision(False, f"The challenger is broken: {'; '.join(found)}.", broken=True)

    champion_is_sound = champion is not None and not faults(champion, policy)
    if champion is None or not champion_is_sound:
        why = "there is no champion" if champion is None else "the champion is broken by today's policy"
        if not math.isfinite(challenger.base_kid):
            return Decision(False, f"Not promoted: {why}, and the base model to compare with was not measured.")
        better = challenger.base_kid - challenger.kid > policy.min_kid_improvement
        return Decision(better, _sentence(better, why, "the base model", challenger, challenger.base_kid, policy))

    if challenger.measured_on != champion.measured_on:
        return Decision(
            False,
            "Not promoted: champion and challenger were measured on different held-out pictures "
            f"({champion.measured_on or 'unknown'} and {challenger.measured_on or 'unknown'}); "
            "draw with the champion, too, in this evaluation.",
        )
    lost = champion.recall_at_5 - challenger.recall_at_5
    if lost > policy.max_agreement_loss:
        return Decision(
            False,
            f"Not promoted: agreement with the prompt (R@5) falls from {champion.recall_at_5:.3f} to "
            f"{challenger.recall_at_5:.3f}, by more than the {policy.max_agreement_loss:.3f} allowed "
            f"(KID {champion.kid:.4f} → {challenger.kid:.4f}).",
        )
    better = champion.kid - challenger.kid > policy.min_kid_improvement
    why = f"R@5 {champion.recall_at_5:.3f} → {challenger.recall_at_5:.3f}"
    return Decision(better, _sentence(better, why, "the champion", challenger, champion.kid, policy))


def judge_student(student: Figures, teacher: Figures, policy: PromotionPolicy, *, max_kid_loss: float) -> Decision:
    """Decide whether a distilled student may draw in its teacher's place where speed is asked for.

    It must be sound, measured on the same pictures, and its KID may be higher than the teacher's by at most
    ``max_kid_loss`` of the teacher's. Agreement with the prompt may fall as far as a challenger's.

    Args:
        student, teacher: figures of one evaluation.
        policy: the limits that every model is held to.
        max_kid_loss: a share, 0.1 for a tenth.
    """
    if found := faults(student, policy):
        return Decision(False, f"Its few-step student is not served, it is broken: {'; '.join(found)}.", broken=True)
    compared = f"KID {teacher.kid:.4f} → {student.kid:.4f}, R@5 {teacher.recall_at_5:.3f} → {student.recall_at_5:.3f}"
    if student.kid > teacher.kid + max_kid_loss * abs(teacher.kid):
        return Decision(
            False, f"Its few-step student is not served: its KID is more than {max_kid_loss:.0%} higher ({compared})."
        )
    if teacher.recall_at_5 - student.recall_at_5 > policy.max_agreement_loss:
        return Decision(
            False,
            "Its few-step student is not served: agreement with the prompt falls by more than "
            f"{policy.max_agreement_loss:.3f} ({compared}).",
        )
    return Decision(True, f"Its few-step student is served beside it ({compared}).")


def _sentence(
    better: bool, why: str, rival: str, challenger: Figures, rival_kid: float, policy: PromotionPolicy
) -> str:
    verdict = "Promoted" if better else "Not promoted"
    if better and challenger.kid >= rival_kid:
        relation = f"at most {-policy.min_kid_improvement:g} further from the real pictures than"
        margin = ", which the policy allows"
    else:
        relation = "nearer to the real pictures than" if better else "not nearer to the real pictures than"
        margin = f" by more than {policy.min_kid_improvement:g}" if policy.min_kid_improvement > 0 else ""
    return (
        f"{verdict}: {relation} {rival}{margin}, KID {rival_kid:.4f} → {challenger.kid:.4f} "
        f"(± {challenger.kid_standard_error:.4f}); {why}."
    )


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
