"""The families of methods, in the order in which they are shown: title and the files they are in."""

FAMILIES: dict[str, tuple[str, ...]] = {
    "Gradient": ("gradient",),
    "Path": ("path",),
    "Modified backprop": ("backprop",),
    "Relevance": ("relevance", "deeplift", "taylor"),
    "Class activation maps": ("cam",),
    "Perturbation": ("perturbation", "masks", "surrogate", "shapley", "extremal"),
}


def family_of(method: type) -> str:
    """The title of the family of a method: that of its file, which is called like one above, alone or as in `cam_x.py`."""
    file = method.__module__.rpartition(".")[2]
    for title, names in FAMILIES.items():
        if any(file == name or file.startswith(f"{name}_") for name in names):
            return title
    return file.replace("_", " ").capitalize()


def families(methods: dict[str, type]) -> dict[str, dict[str, type]]:
    """Methods by name, grouped by family in the order above; families of other packages come last."""
    groups: dict[str, dict[str, type]] = {title: {} for title in FAMILIES}
    for name, cls in methods.items():
        groups.setdefault(family_of(cls), {})[name] = cls
    return {title: group for title, group in groups.items() if group}
