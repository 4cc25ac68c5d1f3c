"""A package of attacks that misbehave, installed for one test by a folder on PYTHONPATH, as pip would install it."""

import os
from pathlib import Path

CODE = """
import ctypes, os, signal, sys, time
from pathlib import Path
from typing import ClassVar

import numpy as np

from muaudit.attack import Attack, Measurement, Prepared
from muaudit.models import ScoresText


class Base(Attack):
    version: ClassVar = "1"
    summary: ClassVar = "Misbehaves."
    source: ClassVar = "none"
    access: ClassVar = "text"
    needs: ClassVar = (ScoresText,)
    cost: ClassVar = "none"

    def prepare(self, bench):
        return Prepared()

    def measure(self, model, prepared, rng):
        self.act()
        units = tuple(f"unit {number}" for number in range(20))
        return Measurement(
            units=units, clusters=units, sets=("forget",) * 20, leakage=tuple(rng.uniform(0, 0.01, 20).tolist())
        )

    def act(self):
        pass


class Crashes(Base):
    name: ClassVar = "crashes"

    def act(self):
        ctypes.string_at(0)


class Aborts(Base):
    name: ClassVar = "aborts"

    def act(self):
        os.abort()


class Killed(Base):
    name: ClassVar = "killed"

    def act(self):
        os.kill(os.getpid(), signal.SIGKILL)


class Leaves(Base):
    name: ClassVar = "leaves"

    def act(self):
        sys.exit(0)


class Ends(Base):
    name: ClassVar = "ends"

    def act(self):
        os._exit(0)


class Hangs(Base):
    name: ClassVar = "hangs"

    def act(self):
        while True:
            time.sleep(1)


class Devours(Base):
    name: ClassVar = "devours"

    def act(self):
        eaten = []
        while True:
            eaten.append(bytes(2**28))


class Unready(Base):
    name: ClassVar = "unready"

    def prepare(self, bench):
        ctypes.string_at(0)


class Prints(Base):
    name: ClassVar = "prints"

    def act(self):
        print("an attack's own words")


class Slow(Base):
    name: ClassVar = "slow"
    pause: float = 0.2
    told: str | None = None

    def act(self):
        if self.told is not None:
            Path(self.told).write_text(str(os.getpid()))
        time.sleep(self.pause)


class Fills(Base):
    name: ClassVar = "fills"

    def act(self):
        raise OSError(28, "No space left on device")
"""

NAMES = ("crashes", "aborts", "killed", "leaves", "ends", "hangs", "devours", "unready", "prints", "slow", "fills")


def install(folder: Path) -> dict[str, str]:
    """Installs the attacks.

    Args:
        folder: Where to.

    Returns:
        The environment in which they are installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "misbehaving_attacks.py").write_text(CODE, encoding="utf-8")
    info = folder / "misbehaving_attacks-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: misbehaving-attacks\nVersion: 1.0\n", encoding="utf-8")
    entries = "".join(f"{name} = misbehaving_attacks:{name.capitalize()}\n" for name in NAMES)
    (info / "entry_points.txt").write_text(f"[muaudit.attacks]\n{entries}", encoding="utf-8")
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}
