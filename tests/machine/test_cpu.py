import os

import pytest

from workbench.errors import ConfigError
from workbench.machine.cpu import cpu, measurement_threads, parse_cpuinfo, quota_cores

X86 = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu sse4_1 avx2 avx512f avx512bw avx512_vnni amx_int8

processor\t: 1
model name\t: another
"""
ARM = """processor\t: 0
Features\t: fp asimd asimddp i8mm sve
CPU implementer\t: 0x41
CPU part\t: 0xd40
"""


def test_an_x86_processor_is_described_by_its_first_core():
    model, vendor, features = parse_cpuinfo(X86)
    assert model == "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"
    assert vendor == "GenuineIntel"
    assert features == ("sse4.1", "avx2", "avx512f", "avx512bw", "avx512_vnni", "amx_int8")


def test_an_arm_processor_without_a_name_is_described_by_its_codes():
    model, vendor, features = parse_cpuinfo(ARM)
    assert model == "Arm core 0x41 0xd40"
    assert vendor == "0x41"
    assert features == ("neon", "dotprod", "i8mm", "sve")


def test_this_processor_has_usable_cores_within_what_it_has():
    here = cpu()
    assert 1 <= here.usable_cores <= here.cores <= here.logical_cores <= (os.cpu_count() or 1)
    assert here.model


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_a_container_s_quota_is_read_from_both_versions_of_control_groups(tmp_path, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert quota_cores(tmp_path) == cores


def test_a_measurement_takes_all_usable_cores_unless_told_and_never_more_than_there_are():
    assert measurement_threads(0) == cpu().usable_cores
    assert measurement_threads(1) == 1
    with pytest.raises(ConfigError, match=r"readiness\.threads is 100000"):
        measurement_threads(100_000)
