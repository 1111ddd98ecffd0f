"""What is kept of machines: their probes, and the stages that they have run. One folder each, named after the hardware.

A probe is one file, written whole; stages are lines that are appended, so several workers may share the folder. A line
counts only against the rates that it was told for, and only the last ones do: machines change.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from s2d.atomic import write_atomic
from s2d.plan.calibration import Ran, calibrate, middle_of, ratio
from s2d.plan.document import Plan
from s2d.plan.hardware import gpu_key
from s2d.plan.machine import Calibration, Factor, Hardware, Rates
from s2d.plan.names import StageKind
from s2d.plan.timing import PROBED, guessed

#: Of one machine; a day's worth of small jobs, or a year's of large ones.
LAST = 200
#: What is believed of a machine that nobody has probed: the datasheet may be off by so much.
UNPROBED = Factor(middle=1.0, spread=5.0)


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True)

    rates: str
    kind: StageKind
    ratio: float


@dataclass
class Machines:
    """The machines of one folder. What was read is kept, so make one for a request and not for a process."""

    folder: Path
    _read: dict[str, Calibration | None] = field(default_factory=dict)

    @classmethod
    def of_state(cls, state_dir: Path) -> Machines:
        return cls(state_dir.absolute() / "machines")

    def calibrated(self, hardware: Hardware) -> Hardware:
        """`hardware` with what is known of it; as it is where nothing is."""
        name = machine_name(hardware)
        if name not in self._read:
            self._read[name] = self._calibration(hardware)
        return hardware.model_copy(update={"calibration": self._read[name]})

    def _calibration(self, hardware: Hardware) -> Calibration | None:
        rates, before = self._base(hardware)
        seen = [(line.kind, line.ratio) for line in self._lines(hardware) if line.rates == _digest(rates)][-LAST:]
        return None if before is UNPROBED and not seen else calibrate(rates, seen, before)

    def keep_probe(self, hardware: Hardware, rates: Rates) -> Path:
        path = self._place(hardware) / "probe.json"
        write_atomic(path, rates.model_dump_json(indent=1) + "\n")
        return path

    def keep_stages(self, plan: Plan, ran: Iterable[Ran]) -> None:
        """Remember stages that ran on the plan's hardware."""
        rates, _ = self._base(plan.hardware)
        lines = [
            _Line(rates=_digest(rates), kind=plan.stage(one.stage).kind, ratio=round(ratio(plan, one, rates), 5))
            for one in ran
        ]
        place = self._place(plan.hardware)
        place.mkdir(parents=True, exist_ok=True)
        with (place / "stages.jsonl").open("a", encoding="utf-8") as file:
            file.write("".join(line.model_dump_json() + "\n" for line in lines))

    def _base(self, hardware: Hardware) -> tuple[Rates, Factor]:
        try:
            return Rates.model_validate_json((self._place(hardware) / "probe.json").read_bytes()), PROBED
        except (FileNotFoundError, ValidationError):
            # A probe of another version is as good as none.
            return middle_of(*guessed(hardware)), UNPROBED

    def _lines(self, hardware: Hardware) -> list[_Line]:
        try:
            text = (self._place(hardware) / "stages.jsonl").read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        found = []
        for line in text.splitlines()[-2 * LAST :]:
            try:
                found.append(_Line.model_validate_json(line))
            except ValidationError:
                continue  # half a line, of a worker that was killed
        return found

    def _place(self, hardware: Hardware) -> Path:
        return self.folder / machine_name(hardware)


def machine_name(hardware: Hardware) -> str:
    """The same for machines that a plan need not tell apart."""
    if hardware.device == "cuda":
        kind = gpu_key(hardware.name) or re.sub(r"[^a-z0-9]+", "-", hardware.name.lower()) or "gpu"
        return f"{hardware.devices}x-{kind.replace(' ', '-')}"
    return f"cpu-{hardware.cpu_threads}-threads"


def _digest(rates: Rates) -> str:
    return hashlib.sha256(rates.model_dump_json().encode()).hexdigest()[:16]
