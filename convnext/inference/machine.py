"""What a measurement of speed was made on."""

import platform
import re
from pathlib import Path


def cpu_name() -> str:
    """As the processor calls itself, where the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    name = re.search(r"^model name\s*: (.*)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    return name[1] if name else platform.processor() or platform.machine()
