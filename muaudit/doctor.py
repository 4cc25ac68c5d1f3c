"""What is installed here, on which devices, and what that allows."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from muaudit import registry as attacks
from muaudit.version import VERSION

EXTRAS = {
    "torch": "models",
    "transformers": "models",
    "safetensors": "models",
    "peft": "models",
    "textattack": "text",
    "openai": "endpoint",
    "pyarrow": "vision",
    "onnxruntime": "vision",
    "skops": "vision",
    "diffusers": "diffusion",
    "torchmetrics": "diffusion",
    "ray": "ray",
    "distributed": "dask",
}
"""Libraries that no core command needs, and the extra that brings each."""


@dataclass(frozen=True)
class Line:
    """One thing that was looked at.

    Attributes:
        what: Its name.
        found: What was found.
        fine: False where something that a user may want is not here.
        mend: How to get it.
    """

    what: str
    found: str
    fine: bool
    mend: str = ""


def examine() -> list[Line]:
    """Looks at versions, devices and registered attacks.

    Returns:
        One line a thing, in the order in which they matter.
    """
    lines = [Line("muaudit", VERSION, fine=True), Line("python", platform.python_version(), fine=True)]
    for name, extra in EXTRAS.items():
        try:
            lines.append(Line(name, version(name), fine=True))
        except PackageNotFoundError:
            lines.append(Line(name, "not installed", fine=False, mend=f"pip install 'muaudit[{extra}]'"))
    lines.append(_device())
    lines.append(Line("processors", str(os.cpu_count()), fine=True))
    for name, found in attacks.registered().items():
        if isinstance(found, attacks.Broken):
            lines.append(Line(f"attack {name}", found.reason, fine=False, mend=f"mend or uninstall {found.package}"))
        else:
            lines.append(Line(f"attack {name}", f"{found.package} {found.attack.version}", fine=True))
    if lines[2].fine and lines[3].fine:
        lines.append(Line("allows", "auditing model weights and recorded outputs, verifying, rendering", fine=True))
    else:
        lines.append(Line("allows", "auditing recorded outputs, verifying, rendering; no model weights", fine=True))
    return lines


def _device() -> Line:
    try:
        import torch
    except ImportError:
        return Line("device", "no torch, so none is used", fine=True)
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return Line("device", f"{torch.cuda.get_device_name(0)}, {memory:.0f} GiB", fine=True)
    return Line("device", "cpu", fine=True)
