"""Whether a plugin's class defines things as they are called."""

from inspect import isfunction, signature

from mtbench.errors import UsageError


def must_take(plugin: type, name: str) -> None:
    """Refuse a class that defines something with other arguments than its base's.

    Args:
        plugin: the class.
        name: what it may define.

    Raises:
        UsageError: it cannot be called with all arguments of its base's, or with those that have
            no default there.
    """
    own, base = (
        getattr(found, "__func__", found)  # of a class method
        for found in (vars(plugin).get(name), getattr(super(plugin, plugin), name, None))
    )
    if not isfunction(own) or not isfunction(base):
        return
    wanted, taken = signature(base), signature(own)
    needed = [p.name for p in wanted.parameters.values() if p.default is p.empty]
    try:
        taken.bind(*wanted.parameters)
        taken.bind(*needed)
    except TypeError:
        must, found = (
            ", ".join(p.name + "=None" * (p.default is not p.empty) for p in said)
            for said in (wanted.parameters.values(), taken.parameters.values())
        )
        raise UsageError(f"{plugin.__name__}.{name} must take ({must}), found ({found})") from None
