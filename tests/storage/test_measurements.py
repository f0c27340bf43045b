"""The processor's name: two generations are never called the same."""

from pathlib import Path

import pytest

from convnext.storage.measurements import cpu_name


@pytest.mark.parametrize(
    ("name", "family", "model", "expected"),
    [
        ("AMD EPYC", 25, 17, "AMD EPYC (family 25, model 17)"),
        ("AMD EPYC", 26, 2, "AMD EPYC (family 26, model 2)"),
        ("Intel Xeon Processor", 6, 207, "Intel Xeon Processor (family 6, model 207)"),
        ("AMD EPYC 9654 96-Core Processor", 25, 17, "AMD EPYC 9654 96-Core Processor"),
    ],
)
def test_a_name_of_several_generations_is_followed_by_family_and_model(
    name: str, family: int, model: int, expected: str, tmp_path: Path
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    core = f"cpu family\t: {family}\nmodel\t\t: {model}\nmodel name\t: {name}\nstepping\t: 1\nflags\t\t: fpu vme\n"
    cpuinfo.write_text("".join(f"processor\t: {number}\n{core}\n" for number in range(2)))
    assert cpu_name(cpuinfo) == expected


def test_a_system_without_a_name_has_a_name_all_the_same(tmp_path: Path) -> None:
    assert cpu_name(tmp_path / "missing")
    arm = tmp_path / "cpuinfo"
    arm.write_text("processor\t: 0\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\n")
    assert cpu_name(arm)
