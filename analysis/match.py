"""What runs must share to be measured against each other, and the refusal when they do not."""

import json
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from analysis.errors import AnalysisError, nearest
from analysis.run_folder import Launch

# Settings that do not change how long a step takes, or that scaling itself is about.
_FREE = (
    "run.dir",
    "run.resume",
    "run.seed",
    "run.device",  # the hardware found counts
    "run.threads",  # likewise
    "data.path",  # the fingerprint counts
    "train.global_batch",  # equal, or equal per rank: `scaling` decides
    "train.steps",
    "train.epochs",
    "checkpoint.",
    "evaluate.",
    "optimizer.",  # but what decides what is sent, below
)
_BUT = ("optimizer.name", "optimizer.kappa")

# What a launcher tells each rank about itself.
_OF_A_RANK = ("RANK", "SIZE", "LOCAL_", "CROSS_", "HOSTNAME", "GLOO_RENDEZVOUS", "GLOO_IFACE", "SECRET", "NUM_NICS")


def facts(launch: Launch) -> dict[str, Any]:
    """Every named fact of a launch that may matter: settings, versions, hardware."""
    about, own = launch.run.about, launch.facts
    found = {f"{section}.{key}": value for section, keys in about["config"].items() for key, value in keys.items()}
    found |= own["changed"] if isinstance(own.get("changed"), dict) else {}  # what a resume did differently
    found |= {f"versions.{name}": value for name, value in about["versions"].items()}
    git = about.get("git") if isinstance(about.get("git"), dict) else {}
    found |= {"kind": about.get("kind"), "git.commit": git.get("commit"), "git.dirty": git.get("dirty")}
    found |= {f"model.{name}": about["model"].get(name) for name in ("parameters", "flops_per_token")}
    found |= {f"data.{name}": about["data"].get(name) for name in ("fingerprint", "kind", "vocabulary")}
    found |= {f"hardware.{name}": own[name] for name in ("cpu", "cores", "threads", "device")}
    if launch.size > 1:  # a rank that is alone may run without a launcher: it sends nothing
        found["controller"] = own["controller"]
        environment = own.get("environment") if isinstance(own.get("environment"), dict) else {}
        found |= {
            f"environment.{name}": value
            for name, value in environment.items()
            if not name.removeprefix("HOROVOD_").startswith(_OF_A_RANK)
        }
    return found


def must_match(key: str) -> bool:
    """Whether a fact may not differ among runs that are measured against each other."""
    return key in _BUT or not any(key == free or (free[-1] == "." and key.startswith(free)) for free in _FREE)


def differences(launches: list[Launch]) -> dict[str, dict[str, list[str]]]:
    """Facts that differ: {key: {value as text: names of the launches that have it}}."""
    all_facts = [facts(launch) for launch in launches]
    result = {}
    for key in sorted({key for found in all_facts for key in found}):
        values: dict[str, list[str]] = {}
        for launch, found in zip(launches, all_facts, strict=True):
            # One rank alone has no controller or environment to compare; any other absence is a difference.
            if key in found or launch.size > 1 or not key.startswith(("controller", "environment.")):
                values.setdefault(text(found.get(key)), []).append(launch.name)
        if len(values) > 1:
            result[key] = values
    return result | _placement(launches)


def _placement(launches: list[Launch]) -> dict[str, dict[str, list[str]]]:
    """Ranks per host may grow with N (a host fills up) but neither shrink nor differ at one N."""
    ordered = sorted(launches, key=lambda launch: (launch.size, launch.ranks_per_host))
    for one, other in pairwise(ordered):
        shrinks = other.ranks_per_host < one.ranks_per_host
        if shrinks or (one.size == other.size and one.ranks_per_host != other.ranks_per_host):
            values: dict[str, list[str]] = {}
            for launch in ordered:
                values.setdefault(text(launch.ranks_per_host), []).append(launch.name)
            return {"ranks_per_host": values}
    return {}


def text(value: Any) -> str:
    """A value as it is shown: JSON, without a string's quotes."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def accept(
    launches: list[Launch], allow: Iterable[str] = (), by: Iterable[str] = ()
) -> dict[str, dict[str, list[str]]]:
    """Return the differences that are there and allowed; refuse any other that matters, but in what is in `by`.

    Raises:
        AnalysisError: names what differs, or a key that is no key.
    """
    allow, by = set(allow), set(by)
    known = {key for launch in launches for key in facts(launch)}
    for option, keys, others in (("--allow", allow, {"ranks_per_host", "train.global_batch"}), ("--by", by, set())):
        for key in sorted(keys - known - others):
            raise AnalysisError(f"{option} {key}: the runs have no such fact{nearest(key, known | others)}")
    found = differences(launches)
    refused = {key: values for key, values in found.items() if must_match(key) and key not in allow | by}
    if refused:
        shown = [f"{key} is {_values(values)}" for key, values in list(refused.items())[:5]]
        more = f", and {len(refused) - 5} more" if len(refused) > 5 else ""
        beside = " ".join(f"--by {key}" for key in refused if key in known)
        alike = " ".join(f"--allow {key}" for key in refused)
        raise AnalysisError(
            f"these runs cannot be measured against each other: {'; '.join(shown)}{more} "
            f"({f'show them side by side with {beside}, or ' if beside else ''}take them for alike with {alike})"
        )
    return {key: values for key, values in found.items() if key in allow}


def variant(launch: Launch, by: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """The facts that a launch is told apart by, as key and text; without those that it has not, as one rank alone."""
    found = facts(launch)
    return tuple((key, text(found[key])) for key in by if key in found)


def _values(values: dict[str, list[str]]) -> str:
    return " but ".join(f"{value:.60} in {_some(names)}" for value, names in list(values.items())[:3])


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
