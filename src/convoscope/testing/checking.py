"""`check_method`: all laws for one method, on networks of the zoo and on your own."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

from convoscope.core.errors import UnsupportedError, UsageError
from convoscope.method import Method
from convoscope.network import Network
from convoscope.testing.exceptions import EXCEPTIONS
from convoscope.testing.faults import FAULTS, advice
from convoscope.testing.laws import LAWS
from convoscope.testing.laws_trial import Law, NotTried, Trial, small
from convoscope.testing.own import own
from convoscope.testing.untouched import Watch
from convoscope.testing.zoo import Hostile, unavailable, zoo

REFUSED = "refuses the network"
Exceptions = Mapping[tuple[str, str, str], str]
Chosen = str | Network | nn.Module | Callable[[], Network | nn.Module] | Hostile


@dataclass(frozen=True)
class Verdict:
    """How one law ended for a method on a network.

    `how`: "right"; "refused" with a reason that `what` names; "wrong" where the law is broken and "crashed" where an error of
    another kind came up, `what` says which; "not tried". `excused` is the reason of one listed among the exceptions. `cases`
    counts the ends within a law that tries several things of which a method may refuse some.
    """

    method: str
    network: str
    law: str
    how: str
    what: str = ""
    excused: str = ""
    cases: Mapping[str, int] = field(default_factory=dict)
    error: Exception | None = field(default=None, compare=False)

    @property
    def broken(self) -> bool:
        """Whether something has to be done about it."""
        return self.how in ("wrong", "crashed") and not self.excused

    def __str__(self) -> str:
        where = f"{self.method} on {self.network!r}"
        todo = f" ({hint})" if (hint := advice(self.law)) else ""
        return f"{where}{self.what}" if not self.law else f"{where} breaks the law {self.law!r}: {self.what}{todo}"


def check_method(
    method: Method | type[Method] | str, networks: Iterable[Chosen] | None = None, *, thorough: bool = False
) -> None:
    """Checks all laws for one method, on all networks of the zoo, or on those given.

    `networks` are names of the zoo, networks of your own (a Network, a module), or functions that build one: of those at the
    top of a module, other processes can make a copy too. A method may refuse a network with UnsupportedError.

    `thorough` tries what costs much as well, for each network: every law on every network, an exception at every layer and
    at many operators, another process, two processes that share the network, dozens of calls (a thousand on one network),
    other defaults of the process. On the zoo this takes about a minute for a fast method; without it, a few seconds.

    Prints how many networks the method was checked on and which it refused; where `thorough`, a line for each fault. Raises
    AssertionError naming each network, the law that is broken there, how, the number of the fault and what to do: the first
    law of each network, or all where `thorough`.
    """
    chosen, checked = _chosen(networks), small(method)
    verdicts: list[Verdict] = []
    broken: list[Verdict] = []
    for hostile in chosen:
        for verdict in verdicts_of(checked, hostile, thorough=thorough):
            verdicts.append(verdict)
            if verdict.broken:
                broken.append(verdict)
                if not thorough:
                    break
    if broken:
        bad = len({v.network for v in broken})
        counted = f"\n({bad} of {len(chosen)} networks)" if len(chosen) > 1 else ""
        raise AssertionError("\n".join(map(str, broken)) + counted) from broken[0].error
    refused = {v.network: v.what for v in verdicts if v.law == REFUSED}
    kept = len(chosen) - len(refused)
    said = [f"{_name(checked)} keeps all laws on {kept} network{'s' * (kept != 1)}"]
    print("; ".join(said + [f"refuses {n}: {r}" for n, r in refused.items()]))
    if thorough:
        print(report(verdicts))


def check_on(method: Method, hostile: Hostile, exceptions: Exceptions = EXCEPTIONS) -> str:
    """Checks all laws for one method, with its settings as they are, on one network; what it said if it refused that."""
    refusal = ""
    for verdict in verdicts_of(method, hostile, exceptions):
        if verdict.broken:
            raise AssertionError(str(verdict)) from verdict.error
        refusal = verdict.what if verdict.law == REFUSED else refusal
    return refusal


def verdicts_of(
    method: Method, hostile: Hostile, exceptions: Exceptions = EXCEPTIONS, thorough: bool = False
) -> Iterator[Verdict]:
    """How each law ends for one method, with its settings as they are, on one network; only that it is refused where it is."""
    trial, names = Trial(method, hostile, thorough), (_name(method), hostile.name)
    listed = {law: reason for (m, n, law), reason in exceptions.items() if m == method.name and n in (hostile.name, "*")}
    if (refusal := _refusal(trial)) is not None:
        yield refusal
        return
    if REFUSED in listed:
        said = f": listed as refused ({listed[REFUSED]}), and runs; strike it from the exceptions"
        yield Verdict(*names, "", "wrong", said)
        return
    for law, check in LAWS.items():
        if not _meant(check, trial):
            continue
        how, what, error = _ended(trial, check)
        if law in listed and how == "right":
            how, what = "wrong", f"it holds, and is listed as an exception ({listed[law]}); strike it"
            yield Verdict(*names, law, how, what)
        else:
            excused = listed.get(law, "") if how in ("wrong", "crashed") else ""
            yield Verdict(*names, law, how, what, excused, dict(trial.cases), error)


def _name(method: Method) -> str:
    return method.name or type(method).__name__  # one that is not registered has none


def _meant(check: Law, trial: Trial) -> bool:
    """Whether a law is for this network; on your own, the quick ones all are."""
    networks = getattr(check, "networks", (trial.hostile.name,))
    return trial.thorough or trial.hostile.name in networks or (trial.hostile.own and bool(networks))


def _ended(trial: Trial, check: Law) -> tuple[str, str, Exception | None]:
    trial.cases.clear()
    try:
        check(trial)
    except NotTried as error:
        return "not tried", str(error), None
    except AssertionError as error:
        return "wrong", str(error), error
    except Exception as error:
        return "crashed", f"{type(error).__name__}: {error}", error
    return "right", "", None


def _refusal(trial: Trial) -> Verdict | None:
    names, watch = (_name(trial.method), trial.hostile.name), Watch(trial.network.module, trial.x)
    try:
        trial.reference  # noqa: B018
    except UnsupportedError as error:
        said = str(error)
        try:
            watch.check("after refusing")
        except AssertionError as changed:
            return Verdict(*names, "", "wrong", f", {changed}", error=changed)
        if len(said) < 20 or "\n" in said:
            return Verdict(*names, "", "wrong", f" {REFUSED} without saying in one line what it lacks: {said}", error=error)
        return Verdict(*names, REFUSED, "refused", said)
    except Exception as error:
        return Verdict(*names, "", "crashed", f": {type(error).__name__}: {error}", error=error)
    return None


def _chosen(networks: Iterable[Chosen] | None) -> list[Hostile]:
    known = zoo()
    found = []
    for n in known if networks is None else networks:
        if isinstance(n, str) and n not in known:
            raise UsageError(f"no network {n!r} in the zoo; it has {', '.join(known)}; or give a network of your own")
        found.append(known[n] if isinstance(n, str) else n if isinstance(n, Hostile) else own(n))
    return [h for h in found if not unavailable(h)]


def report(verdicts: Iterable[Verdict]) -> str:
    """A line for each fault: on how many networks it was looked for, and how that ended."""
    verdicts, lines = list(verdicts), []
    for number, fault in FAULTS.items():
        found = [v for v in verdicts if v.law in fault.laws]
        ends = Counter({v.network: worst([o.how for o in found if o.network == v.network]) for v in found}.values())
        lines.append(f"{number:4} {fault.title}: {', '.join(f'{n} {how}' for how, n in ends.items()) or 'not tried'}")
    reasons = dict.fromkeys(f"not tried, {v.law}: {v.what}" for v in verdicts if v.how == "not tried")
    excused = dict.fromkeys(f"excused, {v.law} on {v.network}: {v.excused}" for v in verdicts if v.excused)
    return "\n".join([*lines, *reasons, *excused])


def worst(ends: Iterable[str]) -> str:
    """The worst of several ends."""
    order = ("crashed", "wrong", "right", "refused", "not tried")
    return min(ends, key=order.index)
