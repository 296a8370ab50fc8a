"""Reading a method's search space without running a study."""

from typing import Any

from mtbench.balancing.balancer import Balancer


class _Recorder:
    """Stands in for a trial: notes what is asked and answers with the first value."""

    def __init__(self) -> None:
        self.asked: dict[str, str] = {}

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        self.asked[name] = f"[{low:g}, {high:g}]" + (" log" if log else "")
        return low

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        self.asked[name] = f"{low}..{high}" + (" log" if log else "")
        return low

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any:
        self.asked[name] = "{" + ", ".join(map(str, choices)) + "}"
        return choices[0]


def search_space(method: type[Balancer]) -> dict[str, str]:
    """Return what a method's `suggest` draws, by parameter, in words, for two objectives."""
    recorder = _Recorder()
    method.suggest(recorder, 2)  # type: ignore[arg-type]
    return recorder.asked
