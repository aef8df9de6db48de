"""The search for better settings, with Optuna: which values are tried next, which trials end early, what was found.

Belongs here: all that knows Optuna. What a trial does is handed in as a function. A study lives in a database, so that
one that was killed goes on: trial k is chosen by a sampler seeded with (seed, k) from the trials that ended before,
hence it is the same trial as without the kill. Nothing is sent anywhere.
"""

import contextlib
import fcntl
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from genai_assets.credentials import shown
from genai_assets.diffusion.config import TrainingConfig
from genai_assets.diffusion.tuning.space import Budget, Choice, Range, Space, Values, rounded, trial_config

if TYPE_CHECKING:
    import optuna

CURRENT = 0
"""Number of the trial with the current settings."""

_RANDOM_TRIALS = 8  # before the sampler models what it has seen
_COMPLETE_BEFORE_PRUNING = 4
_PARTS_BEFORE_PRUNING = 2  # the learning rate warms up in the first
_MOST_KILLS = 3
_LOCK_TIMEOUT_SECONDS = 60
_PLACE, _REASON, _GIVEN_UP, _AGAIN = "place", "reason", "given_up", "again"


class StudyBusy(RuntimeError):
    """Another process works on this study."""


class StudyUnreadable(RuntimeError):
    """The study's database cannot be used; the message says why and what to do."""


class TrialFailed(RuntimeError):
    """A trial cannot be finished, for its values' sake; the study goes on. The message is the reason."""


class RunTrial(Protocol):
    """Trains once and gives the validation loss at the end, or at the part after which it was told to stop."""

    def __call__(
        self, config: TrainingConfig, report: Callable[[int, float], None], should_prune: Callable[[], bool]
    ) -> float:
        """Train by ``config``.

        Args:
            config: the run.
            report: to be told (part of the budget that is done, from 1; validation loss).
            should_prune: to be asked after each report; when true the run ends.

        Raises:
            TrialFailed: these values cannot be trained with. A loss that is not finite means the same.
        """
        ...


@dataclass(frozen=True)
class Trial:
    """One trial that ended.

    Attributes:
        number: from 0, the current settings; trials that a kill interrupted have none.
        state: seen through, ended early because others did better, or not possible.
        values: what was tried.
        validation_loss: at its end; None when it failed.
        seconds: it took.
        reason: why it failed.
    """

    number: int
    state: Literal["complete", "pruned", "failed"]
    values: Values
    validation_loss: float | None
    seconds: float
    reason: str = ""


@dataclass(frozen=True)
class Again:
    """The current settings and the best trial, both trained once more with another seed."""

    seed: int
    current: float | None
    best: float | None


@dataclass(frozen=True)
class StudyResult:
    """What a study found.

    Attributes:
        name: the study's, in its database.
        trials: those that ended, by number.
        again: the current settings against the best trial with other seeds; empty when no trial was better.
        interrupted: trials that a kill interrupted; they were done again.
    """

    name: str
    trials: tuple[Trial, ...]
    again: tuple[Again, ...]
    interrupted: int

    @property
    def current(self) -> Trial:
        """The trial with the current settings."""
        return self.trials[CURRENT]

    @property
    def best(self) -> Trial | None:
        """The trial with the lowest loss at its end, when that is lower than the current settings'."""
        complete = [trial for trial in self.trials[1:] if trial.state == "complete"]
        best = min(complete, key=_loss, default=None)
        return best if best and _loss(best) < _loss(self.current) else None

    @property
    def proposed(self) -> Trial | None:
        """The best trial, when it was better again with every other seed."""
        beaten = any(_or_infinite(once.best) >= _or_infinite(once.current) for once in self.again)
        return None if beaten else self.best


def run_study(
    run_trial: RunTrial,
    *,
    name: str,
    space: Space,
    current: Values,
    config: TrainingConfig,
    budget: Budget,
    trials: int,
    seed: int,
    database_url: str,
    lock: Path,
    repeats: int = 1,
    on_trial: Callable[[Trial, int], None] | None = None,
) -> StudyResult:
    """Run a study until so many trials have ended, or go on with it; more trials can be asked for later.

    Values come from a tree-structured Parzen estimator (Bergstra et al. 2011; multivariate: Falkner et al. 2018). A
    trial ends early when it is worse than the median of the complete ones at the same part. (Hyperband was not taken:
    its brackets want hundreds of trials, and it assigns them by a trial's number in the database, which a kill moves.)

    Args:
        run_trial: trains once.
        name: the study's name; it must change with anything that a trial's result depends on.
        space: what may vary.
        current: the current settings of what may vary, within ``space``; this is trial 0.
        config: the run with the current settings.
        budget: of each trial.
        trials: how many are to have ended; killed ones are done again and do not count.
        seed: of the choice of values.
        database_url: SQLAlchemy URL; tables of Optuna's own are made there.
        lock: a file that is locked meanwhile.
        repeats: with how many other seeds the best trial must be better once more.
        on_trial: told (trial, how many in all) after each.

    Raises:
        StudyBusy: another process has the lock.
        StudyUnreadable: the database belongs to another program or another version of Optuna.
        Exception: what ``run_trial`` raises but ``TrialFailed``. The study can be gone on with; a trial that ends so,
            or is killed, three times over counts as failed.
    """
    import optuna

    with _alone(lock), _storage(database_url) as storage:
        pruner = optuna.pruners.MedianPruner(
            n_startup_trials=_COMPLETE_BEFORE_PRUNING, n_warmup_steps=_PARTS_BEFORE_PRUNING
        )
        study = optuna.create_study(
            study_name=name, storage=storage, pruner=pruner, direction="minimize", load_if_exists=True
        )
        _close_interrupted(study)
        while (place := len(_counted(study))) < trials:
            _run_next(study, run_trial, place, space, current, config, budget, seed)
            if on_trial:
                on_trial(_counted(study)[place], trials)
        again = _run_again(study, run_trial, config, budget, repeats)
        return _result(study, again)


def plots(name: str, database_url: str) -> dict[str, str]:
    """Plots of a study as pieces of HTML by title. The first carries plotly.js, so the page needs no network.

    Plots that the trials do not suffice for are left out.
    """
    import optuna
    from optuna import visualization

    drawn: dict[str, str] = {}
    with _storage(database_url) as storage:
        study = optuna.load_study(study_name=name, storage=storage)
        complete = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
        figures: dict[str, Callable[[], Any]] = {
            "Validation loss, trial by trial": lambda: visualization.plot_optimization_history(
                study, target_name="validation loss"
            ),
            "Validation loss within each trial": lambda: visualization.plot_intermediate_values(study),
            "Each setting by itself": lambda: visualization.plot_slice(study, target_name="validation loss"),
        }
        if len({trial.value for trial in complete}) > 1:
            figures["Which settings matter"] = lambda: visualization.plot_param_importances(study)
        for title, draw in figures.items():
            drawn[title] = draw().to_html(full_html=False, include_plotlyjs=not drawn, include_mathjax=False)
    return drawn


def _run_next(
    study: "optuna.Study",
    run_trial: RunTrial,
    place: int,
    space: Space,
    current: Values,
    config: TrainingConfig,
    budget: Budget,
    seed: int,
) -> None:
    """Choose the values of one trial, run it, and write down how it ended."""
    from optuna.trial import TrialState

    study.sampler = _sampler(seed, place)
    if place == CURRENT and not study.get_trials(deepcopy=False, states=[TrialState.WAITING]):
        study.enqueue_trial({name: current[name] for name in space})
    trial = study.ask(_distributions(space))
    trial.set_user_attr(_PLACE, place)
    pruned = False

    def report(part: int, loss: float) -> None:
        nonlocal pruned
        if not math.isfinite(loss):
            raise TrialFailed(f"validation loss {loss} after part {part} of {budget.parts}")
        trial.report(loss, part)
        pruned = place != CURRENT and trial.should_prune()

    values = {} if place == CURRENT else rounded(trial.params)
    try:
        loss = run_trial(trial_config(config, values, budget), report, lambda: pruned)
        if not math.isfinite(loss):
            raise TrialFailed(f"validation loss {loss} at the end")
    except TrialFailed as failure:
        # "Pruned", so that the sampler learns to keep away; it takes no notice of trials that "failed".
        trial.set_user_attr(_REASON, str(failure))
        study.tell(trial, state=TrialState.PRUNED)
    else:
        if pruned:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, loss)


def _run_again(
    study: "optuna.Study", run_trial: RunTrial, config: TrainingConfig, budget: Budget, repeats: int
) -> tuple[Again, ...]:
    """The current settings and the best trial with other seeds; what was run already is read.

    The best of many trials is also the luckiest; a better seed is no better setting.
    """
    best = _result(study, ()).best
    if best is None:
        return ()

    def loss_of(trial: Trial, seed: int) -> float | None:
        key = f"{_AGAIN} {trial.number} {seed}"
        if key not in study.user_attrs:
            values = {} if trial.number == CURRENT else trial.values
            run = trial_config(config.model_copy(update={"seed": seed}), values, budget)
            try:
                loss = run_trial(run, lambda part, loss: None, lambda: False)
            except TrialFailed:
                loss = math.nan
            study.set_user_attr(key, loss if math.isfinite(loss) else None)
        return study.user_attrs[key]

    current = _counted(study)[CURRENT]
    seeds = [config.seed + number for number in range(1, repeats + 1)]
    return tuple(Again(seed, loss_of(current, seed), loss_of(best, seed)) for seed in seeds)


def _close_interrupted(study: "optuna.Study") -> None:
    """Mark trials that a kill left running as failed; we hold the lock, so nobody works on them."""
    from optuna.trial import TrialState

    for trial in study.get_trials(states=[TrialState.RUNNING]):
        place = trial.user_attrs.get(_PLACE)
        before = [
            other
            for other in study.get_trials(states=[TrialState.FAIL])
            if place is not None and other.user_attrs.get(_PLACE) == place
        ]
        if len(before) + 1 >= _MOST_KILLS:
            reason = f"its process was killed, or broke down, {_MOST_KILLS} times; was it out of memory?"
            study.set_user_attr(f"{_GIVEN_UP} {trial.number}", reason)
        study.tell(trial.number, state=TrialState.FAIL)


def _counted(study: "optuna.Study") -> list[Trial]:
    """The trials that ended, in their order."""
    from optuna.trial import TrialState

    found: list[Trial] = []
    attributes = study.user_attrs
    for trial in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]):
        given_up = attributes.get(f"{_GIVEN_UP} {trial.number}")
        if trial.state == TrialState.FAIL and not given_up:
            continue
        reason = given_up or trial.user_attrs.get(_REASON, "")
        complete = trial.state == TrialState.COMPLETE
        number = len(found)
        found.append(
            Trial(
                number=number,
                state="failed" if reason else "complete" if complete else "pruned",
                values=dict(trial.params) if number == CURRENT else rounded(trial.params),
                validation_loss=None if reason else trial.value,
                seconds=trial.duration.total_seconds() if trial.duration else 0.0,
                reason=reason,
            )
        )
    return found


def _result(study: "optuna.Study", again: tuple[Again, ...]) -> StudyResult:
    from optuna.trial import TrialState

    counted = _counted(study)
    failed = study.get_trials(deepcopy=False, states=[TrialState.FAIL])
    given_up = sum(name.startswith(_GIVEN_UP) for name in study.user_attrs)
    return StudyResult(study.study_name, tuple(counted), again, interrupted=len(failed) - given_up)


def _sampler(seed: int, place: int) -> "optuna.samplers.BaseSampler":
    """A sampler for one trial: its choice depends on (seed, number of the trial) and on the trials before."""
    import numpy as np
    import optuna

    drawn = int(np.random.SeedSequence([seed, place]).generate_state(1)[0])
    return optuna.samplers.TPESampler(seed=drawn, n_startup_trials=_RANDOM_TRIALS, multivariate=True)


def _distributions(space: Mapping[str, Range | Choice]) -> "dict[str, optuna.distributions.BaseDistribution]":
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    return {
        name: CategoricalDistribution(varied.values)
        if isinstance(varied, Choice)
        else FloatDistribution(varied.low, varied.high, log=varied.log)
        for name, varied in space.items()
    }


@contextlib.contextmanager
def _storage(database_url: str) -> "Iterator[optuna.storages.RDBStorage]":
    """Optuna's tables in a database, made when they are not there.

    Raises:
        StudyUnreadable: the database belongs to another program or another version of Optuna.
    """
    import optuna
    import sqlalchemy as sa

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what there is to tell is told here
    url = sa.make_url(database_url)
    arguments: dict[str, Any] = {}
    if url.get_backend_name() == "sqlite":
        if url.database and url.database != ":memory:":
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        arguments = {"connect_args": {"timeout": _LOCK_TIMEOUT_SECONDS}}
    _refuse_other_programs(url)
    try:
        # Optuna takes the URL for a template: braces in it are doubled.
        text = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
        storage = optuna.storages.RDBStorage(text, engine_kwargs=arguments)
    except RuntimeError as error:
        raise StudyUnreadable(
            f"{shown(url)} holds studies of another version of Optuna: move it away to begin anew, or name "
            f"another by study.database_url. Optuna says: {error}"
        ) from error
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _refuse_other_programs(url: Any) -> None:
    """Optuna calls the table of its schema's version what MLflow and Dagster call theirs, and would share it.

    Raises:
        StudyUnreadable: there is such a table, and it is not Optuna's.
    """
    import sqlalchemy as sa

    engine = sa.create_engine(url)
    try:
        tables = set(sa.inspect(engine).get_table_names())
    finally:
        engine.dispose()
    if "alembic_version" in tables and "study_directions" not in tables:
        raise StudyUnreadable(
            f"{shown(url)} holds another program's tables (alembic_version), which Optuna would mistake "
            "for its own: name another database by study.database_url"
        )


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock, which the system gives back however this process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StudyBusy(f"another process works on a study ({path} is locked): wait for it, or stop it") from None
        yield


def _loss(trial: Trial) -> float:
    return _or_infinite(trial.validation_loss)


def _or_infinite(loss: float | None) -> float:
    return math.inf if loss is None else loss
