"""What is kept of machines: their probes, and the stages that they have run. One folder for each kind of device.

A probe is one file, written whole, and of one device; stages are lines that are appended, in a file for each number of
devices, so several workers may share the folder. A line counts only against the rates that it was told for, once, and
only the last ones do: machines change. What cannot be read counts as not known: plans are made all the same.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from s2d.atomic import write_atomic
from s2d.plan.calibration import Ran, calibrate, middle_of, ratio
from s2d.plan.document import Plan
from s2d.plan.hardware import gpu_key
from s2d.plan.machine import Calibration, Factor, Hardware, Rates
from s2d.plan.names import StageKind
from s2d.plan.timing import PROBED, guessed

_log = logging.getLogger(__name__)

#: Of one machine; a day's worth of small jobs, or a year's of large ones.
LAST = 200
#: A stage that took more than so many times what was expected, or less, was disturbed.
MOST = 1000.0
#: What is believed of a machine that nobody has probed: the datasheet may be off by so much.
UNPROBED = Factor(middle=1.0, spread=5.0)


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True)

    rates: str
    run: str
    kind: StageKind
    ratio: float = Field(ge=1 / MOST, le=MOST)


@dataclass
class Machines:
    """The machines of one folder. What was read is kept, so make one for a request and not for a process."""

    folder: Path
    _read: dict[Path, Calibration | None] = field(default_factory=dict)

    @classmethod
    def of_state(cls, state_dir: Path) -> Machines:
        return cls(state_dir.absolute() / "machines")

    def calibrated(self, hardware: Hardware) -> Hardware:
        """`hardware` with what is known of it; as it is where nothing is."""
        place = self._stages(hardware)
        if place not in self._read:
            self._read[place] = self._calibration(hardware)
        return hardware.model_copy(update={"calibration": self._read[place]})

    def keep_probe(self, hardware: Hardware, rates: Rates) -> Path:
        path = self._probe(hardware)
        write_atomic(path, rates.model_dump_json(indent=1) + "\n")
        return path

    def keep_stages(self, plan: Plan, run: Path, ran: Iterable[Ran]) -> None:
        """Remember stages that ran on the plan's hardware, in the folder `run`. Telling them again changes nothing."""
        rates, _ = self._base(plan.hardware)
        lines = []
        for one in ran:
            found = min(MOST, max(1 / MOST, ratio(plan, one, rates)))
            told = _digest(f"{run}:{one.stage}:{one.seconds}")
            lines.append(_Line(rates=_of(rates), run=told, kind=plan.stage(one.stage).kind, ratio=round(found, 5)))
        place = self._stages(plan.hardware)
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("a", encoding="utf-8") as file:
            file.write("".join(line.model_dump_json() + "\n" for line in lines))

    def _calibration(self, hardware: Hardware) -> Calibration | None:
        rates, before = self._base(hardware)
        once = {line.run: (line.kind, line.ratio) for line in self._lines(hardware) if line.rates == _of(rates)}
        probed, seen = before is PROBED, list(once.values())[-LAST:]
        return calibrate(rates, seen, before, probed=probed) if probed or seen else None

    def _base(self, hardware: Hardware) -> tuple[Rates, Factor]:
        try:
            return Rates.model_validate_json(self._probe(hardware).read_bytes()), PROBED
        except FileNotFoundError:
            pass
        except (OSError, ValidationError):
            _log.warning("%s cannot be used: probe again with `s2d probe`", self._probe(hardware))
        return middle_of(*guessed(hardware)), UNPROBED

    def _lines(self, hardware: Hardware) -> list[_Line]:
        place = self._stages(hardware)
        try:
            text = place.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        except OSError:
            _log.warning("%s cannot be read: what this machine has run does not count", place)
            return []
        found = []
        for line in text.splitlines()[-2 * LAST :]:
            try:
                found.append(_Line.model_validate_json(line))
            except ValidationError:
                continue  # half a line, of a worker that was killed
        return found

    def _probe(self, hardware: Hardware) -> Path:
        return self.folder / kind_of(hardware) / "probe.json"

    def _stages(self, hardware: Hardware) -> Path:
        return self.folder / kind_of(hardware) / f"stages-{hardware.devices}.jsonl"


def kind_of(hardware: Hardware) -> str:
    """The same for devices that a plan need not tell apart. CPUs of one state folder are taken for alike."""
    if hardware.device == "cuda":
        kind = gpu_key(hardware.name) or re.sub(r"[^a-z0-9]+", "-", hardware.name.lower()) or "gpu"
        return kind.replace(" ", "-")
    return f"cpu-{hardware.cpu_threads}-threads"


def _of(rates: Rates) -> str:
    return _digest(rates.model_dump_json())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
