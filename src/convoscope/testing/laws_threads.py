"""The laws that several threads may explain one network at once."""

import threading

from torch import Tensor

from convoscope.targets import Logit
from convoscope.testing.laws_trial import Trial, only_on, same


def works_in_two_threads(trial: Trial) -> None:
    _together(trial, threads=2, calls=1)


@only_on("skip")
def works_in_eight_threads(trial: Trial) -> None:
    _together(trial, threads=8, calls=1)


def _together(trial: Trial, threads: int, calls: int) -> None:
    """Every thread gets its own target, and what it would have got alone."""
    targets = [Logit((i + 1) % trial.hostile.classes) for i in range(threads)]
    expected = {Logit(1): trial.reference}
    expected |= {t: trial.values(target=t) for t in set(targets) - {Logit(1)}}
    barrier, errors = threading.Barrier(threads), []  # type: ignore[var-annotated]
    found: list[list[Tensor]] = [[] for _ in targets]

    def work(i: int) -> None:
        try:
            barrier.wait(60)
            for _ in range(calls):
                found[i].append(trial.values(target=targets[i]))
        except Exception as error:
            errors.append(error)

    with trial.unchanged(f"after {threads} threads at once"):
        running = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
        for t in running:
            t.start()
        for t in running:
            t.join()
    if errors:
        raise AssertionError(f"in a thread: {errors[0]!r}") from errors[0]
    for i, values in enumerate(found):
        for v in values:
            same(v, expected[targets[i]], f"thread {i}")
