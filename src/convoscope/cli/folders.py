"""Whole folders of pictures: every map as a PNG, an index of them, and a run that was stopped goes on where it was."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convoscope.core.errors import ConvoscopeError, ImageError, UsageError
from convoscope.files import make_folder, replaced, write_text, writing

if TYPE_CHECKING:
    from torch import Tensor

    from convoscope.network import Network
    from convoscope.results import Attribution

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".avif"})
INDEX = "index.jsonl"
SCHEMA = "convoscope.maps/1"
GROUP = 16  # pictures explained together; part of what a seed means, so it does not follow the batch size


@dataclass(frozen=True)
class Found:
    """A picture, and its place below the folder that was named."""

    path: Path
    place: Path


def pictures_in(words: Sequence[str], out: Path | None) -> list[Found]:
    """The pictures named, and all in the folders named, in the order of their names; nothing hidden, nothing below `out`."""
    found = []
    for word in words:
        root = Path(word)
        if not root.is_dir():
            found.append(Found(root, Path(root.name)))
            continue
        inside = [p for p in sorted(root.rglob("*")) if p.suffix.lower() in SUFFIXES and p.is_file()]
        places = [Found(p, p.relative_to(root)) for p in inside if out is None or out.resolve() not in p.resolve().parents]
        places = [f for f in places if not any(part.startswith(".") for part in f.place.parts)]
        if not places:
            raise UsageError(f"no pictures in folder {word!r}; looked for {', '.join(sorted(SUFFIXES))}")
        found += places
    return found


@dataclass
class Batch:
    """What to explain, how, and where the maps go."""

    net: "Network"
    pictures: list[Found]
    methods: list[Any]
    targets: list[Any]
    chosen: bool
    at: list[str] | None
    batch_size: int | str
    seed: int
    out: Path
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)  # what was done, by key
    failed: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    @cached_property
    def combinations(self) -> list[tuple[Any, Any, str | None]]:
        """Method, target and address, in the order in which `explain` gives them."""
        return list(product(self.methods, self.targets, self.at or [None]))

    def key(self, content: str, place: Path, combination: tuple[Any, Any, str | None]) -> str:
        """What a map depends on: another version, network, setting or picture makes another key."""
        from convoscope import __version__

        method, target, at = combination
        net = self.net
        space = [net.size, net.mean, net.std, str(net.dtype), repr(net.transform)]
        made = [SCHEMA, __version__, net.hash, space, method.to_dict(), target.to_dict(), at, self.seed, content, str(place)]
        return hashlib.blake2b(json.dumps(made, sort_keys=True, default=str).encode(), digest_size=12).hexdigest()


# ---- the index


def read_index(out: Path) -> dict[str, dict[str, Any]]:
    """The maps that are there, by key; lines cut off when a run was killed, and maps that were deleted, do not count."""
    found = {}
    for line in (out / INDEX).read_text(encoding="utf-8").splitlines() if (out / INDEX).is_file() else []:
        with suppress(ValueError, KeyError, TypeError):
            entry = json.loads(line)
            if entry["schema"] == SCHEMA and (out / entry["file"]).is_file():
                found[entry["key"]] = entry
    return found


def _clean(out: Path) -> None:
    """What a killed run left half written goes."""
    for path in out.rglob(".*.partial"):
        owner = re.fullmatch(r"\..*\.(\d+)\.partial", path.name)
        if owner and not _alive(int(owner[1])):
            path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


# ---- the work


def run(batch: Batch, as_json: bool) -> None:
    """Explain all that is missing, a group of pictures at a time; a picture that cannot be read is named at the end."""
    from convoscope.cli.terminal import Progress, console, print_json

    make_folder(batch.out)
    _clean(batch.out)
    there = read_index(batch.out)
    write_text(batch.out / INDEX, "".join(_line(e) for e in there.values()))
    total, before = len(batch.pictures), 0
    with Progress("pictures") as progress:
        for start in range(0, total, GROUP):
            group = batch.pictures[start : start + GROUP]
            size = len(group)
            before += _group(batch, group, there, lambda done, of, s=start, n=size: progress(s + n * done // of, total))
    done = len(batch.entries)
    if as_json:
        from convoscope.cli.work import refused_json

        counts = {"pictures": total, "made": done - before, "already_there": before}
        failed = [{"picture": name, "reason": reason} for name, reason in batch.failed]
        more = {"failed": failed} | refused_json(batch.left_out)
        print_json({"schema": SCHEMA, "index": str(batch.out / INDEX), **counts, **more})
    else:
        for name, reason in batch.left_out:
            console().print(f"left out {name}: {reason}", style="dim")
        console().print(f"{done} maps of {total} pictures in {batch.out}, {before} of them from before; listed in {INDEX}")
    if batch.failed:
        reasons = "; ".join(reason for _, reason in batch.failed[:3]) + ("; ..." if len(batch.failed) > 3 else "")
        raise ConvoscopeError(f"{len(batch.failed)} of {total} pictures could not be explained: {reasons}")


def _group(batch: Batch, group: list[Found], there: dict[str, dict[str, Any]], progress: Any) -> int:
    """One group; how many of its maps were there already. All its pictures run if one does, since draws go by their place."""
    contents = [_content(f.path) for f in group]
    keys = [[batch.key(c, f.place, k) for k in batch.combinations] for f, c in zip(group, contents, strict=True)]
    finished = {key: there[key] for row in keys for key in row if key in there}
    batch.entries |= finished
    wanted = [k for k, _ in enumerate(batch.combinations) if any(row[k] not in there for row in keys)]
    skipped = {name for name, _ in batch.left_out}
    methods = [m for m in batch.methods if m.name not in skipped and any(batch.combinations[k][0] is m for k in wanted)]
    if methods:
        for places, x in _inputs(batch, group):
            for method, attributions in _explained(batch, methods, x, progress):
                mine = [k for k, combination in enumerate(batch.combinations) if combination[0] is method]
                for k, attribution in zip(mine, attributions, strict=True):
                    for i, p in enumerate(places):
                        if keys[p][k] not in there:
                            _save(batch, group[p], (keys[p][k], contents[p]), batch.combinations[k][1], attribution, i)
    return len(finished)


def _content(path: Path) -> str:
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except OSError:
        return ""


def _inputs(batch: Batch, group: list[Found]) -> Iterator[tuple[list[int], "Tensor"]]:
    """The pictures that can be read as inputs, with their numbers: all at once where they have one size."""
    import torch

    shapes: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}
    for i, found in enumerate(group):
        try:
            x = batch.net.read(str(found.path))
            shapes.setdefault(tuple(x.shape), []).append((i, x))
        except (ImageError, UsageError) as error:
            batch.failed.append((str(found.path), str(error)))
    for rows in shapes.values():
        yield [i for i, _ in rows], torch.cat([x for _, x in rows])


def _explained(batch: Batch, methods: list[Any], x: "Tensor", progress: Any) -> Iterator[tuple[Any, list["Attribution"]]]:
    from convoscope.cli.work import Work

    job = Work(batch.net, x, [], methods, batch.targets, batch.chosen, batch.at, batch.batch_size, batch.seed)
    job.attempt(progress)
    batch.left_out += job.left_out
    each = len(batch.targets) * len(batch.at or [None])
    left = {name for name, _ in job.left_out}
    for n, method in enumerate(m for m in methods if m.name not in left):
        yield method, job.attributions[n * each : (n + 1) * each]


def _save(batch: Batch, found: Found, keys: tuple[str, str], target: Any, a: "Attribution", index: int) -> None:
    from convoscope.cli.work import jsonable, slug
    from convoscope.report import picture, target_text

    key, content = keys
    words = [found.place.stem, a.method.name, target_text(a, index), *([a.at] if a.at != "input" else [])]
    file = found.place.parent / f"{'-'.join(slug(w)[:60] for w in words)}-{key[:8]}.png"
    path = batch.out / file
    make_folder(path.parent)
    with replaced(path) as partial:
        picture(a, a.inputs, [index]).save(partial, format="PNG")
    made = {"method": a.method.to_dict(), "target": target.to_dict(), "explains": target_text(a, index), "at": a.at}
    each = {k: v[index] if isinstance(v, list) and len(v) == len(a) else v for k, v in a.diagnostics.items()}
    each |= {k: a.diagnostics[k] / len(a) for k in ("evaluations", "seconds")}  # those of the group, shared out
    entry = {"schema": SCHEMA, "key": key, "file": file.as_posix(), "picture": str(found.path), "picture_hash": content}
    entry |= {"network": a.network_name, "network_hash": a.network_hash, "seed": a.seed, **made, "diagnostics": each}
    batch.entries[key] = jsonable(entry)
    with writing(batch.out / INDEX), (batch.out / INDEX).open("a", encoding="utf-8") as index_file:
        index_file.write(_line(batch.entries[key]))


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n"
