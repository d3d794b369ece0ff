"""Measured joules from fake counters, and the command that accounts for energy."""

import json
import sys
import types

import pytest

from symboliclight.commands import cli
from symboliclight.measure.energy import counters

# Counters.


def zone(root, name, label, energy, wraps=1_000_000):
    folder = root / name
    folder.mkdir(parents=True)
    for file, value in (("name", label), ("energy_uj", energy), ("max_energy_range_uj", wraps)):
        (folder / file).write_text(f"{value}\n")
    return folder / "energy_uj"


def test_rapl_counts_packages_and_dram_and_survives_a_wrap(tmp_path):
    package = zone(tmp_path, "intel-rapl:0", "package-0", 900_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 5)
    zone(tmp_path, "intel-rapl:0:1", "dram", 100)
    zone(tmp_path, "intel-rapl:1", "psys", 5)
    found, why = counters.rapl(tmp_path)
    assert [c.name for c in found] == ["intel-rapl:0 package-0", "intel-rapl:0:1 dram"] and why == ""
    before = found[0].read()
    package.write_text("950000\n")
    assert found[0].since(before) == pytest.approx(0.05)
    package.write_text("200000\n")
    assert found[0].since(before) == pytest.approx(0.3)


def test_missing_and_forbidden_counters_say_why(tmp_path, monkeypatch):
    assert counters.rapl(tmp_path / "none") == ([], f"no RAPL: {tmp_path}/none has no intel-rapl zone (a virtual "
                                                "machine, or a processor without it)")
    energy = zone(tmp_path, "intel-rapl:0", "package-0", "?")
    assert "cannot be read" in counters.rapl(tmp_path)[1]
    energy.unlink()
    read = type(energy).read_text

    def refuse(path, *args, **kwargs):
        if path.name == "energy_uj":
            raise PermissionError
        return read(path, *args, **kwargs)

    monkeypatch.setattr(type(energy), "read_text", refuse)
    assert "only root may read" in counters.rapl(tmp_path)[1]


def test_nvml_counts_millijoules(monkeypatch):
    fake = types.SimpleNamespace(NVMLError=RuntimeError, nvmlInit=lambda: None, nvmlDeviceGetCount=lambda: 2,
                                 nvmlDeviceGetHandleByIndex=lambda i: i,
                                 nvmlDeviceGetTotalEnergyConsumption=lambda i: 1500 * (i + 1))
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    found, why = counters.nvml()
    assert [(c.name, c.read()) for c in found] == [("gpu:0", 1.5), ("gpu:1", 3.0)] and why == ""
    fake.nvmlDeviceGetCount = lambda: 0
    assert counters.nvml() == ([], "no NVML: no GPU")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert counters.nvml() == ([], "no NVML: pip install nvidia-ml-py")


def test_measured_joules_have_idle_power_taken_off(tmp_path):
    """10 W idle; a token takes 0.1 s and 3 J more, the last repetition's tokens 1 J more still; the counter wraps."""
    energy = zone(tmp_path, "intel-rapl:0", "package-0", 0, wraps=30_000_000)
    now, tokens = 0.0, 0

    def advance(seconds, joules):
        nonlocal now
        now += seconds
        energy.write_text(str((int(energy.read_text()) + round(1e6 * joules)) % 30_000_000))

    def work():
        nonlocal tokens
        tokens += 1
        advance(0.1, 1 + 3 + (tokens > 1 + 2 * 4))
        return 1

    found = counters.measure(counters.rapl(tmp_path)[0], work, seconds=0.35, repeats=3, clock=lambda: now,
                             sleep=lambda s: advance(s, 10 * s))
    assert found["label"] == "measured" and tokens == 1 + 3 * 4
    assert found["joules_per_token"] == pytest.approx({"mean": 10 / 3, "sd": (1 / 3) ** 0.5})
    assert found["idle_watts"]["intel-rapl:0 package-0"] == pytest.approx(10)
    assert found["tokens_per_second"] == pytest.approx(10)


# The command.


@pytest.mark.needs("torch")
def test_the_command_accounts_for_a_model_its_twin_and_gpt2(small_checkpoint, small_shards, tmp_path, capsys):
    out = tmp_path / "energy.json"
    done = cli.main(["energy", "--model", str(small_checkpoint), "--data", str(small_shards.path),
                     "--preset", "gpt2-tiny", "--context", "32", "--max-tokens", "64",
                     "--constants", "horowitz-45nm-int8", "--out", str(out)])
    assert done == 0
    shown, result = capsys.readouterr().out, json.loads(out.read_text())
    assert [m["label"] for m in result["models"]] == ["model", "dense twin of model", "gpt2-tiny"]
    ours, twin, gpt2 = result["models"]
    assert ours["tokens_measured"] == 128 and ours["basis"] == "measured" and gpt2["rates"] == {}
    assert 0 < ours["mean_rate"] < 1 and twin["mean_rate"] is None
    assert ours["op_only_uj"]["horowitz-45nm-int8"] < twin["op_only_uj"]["horowitz-45nm-int8"]
    assert str(tmp_path) not in out.read_text() and "commit" in result
    assert (tmp_path / "energy.svg").read_text().count("dense twin of model") == 2
    assert "op-only, µJ a token" in shown and "any rate" in shown and "Horowitz" in shown


def test_the_command_takes_stated_rates(capsys):
    rates = "encoder=0.1,ffn=0.035,blocks=0.18"
    assert cli.main(["energy", "--preset", "v1-194m", "--rates", rates, "--preset", "gpt2-201m", "--json",
                     "--constants", "horowitz-45nm-float32"]) == 0
    v1, _, gpt2 = json.loads(capsys.readouterr().out)["models"]
    fed = 12 * (768 * 768 + 768 * 4096)
    assert v1["mean_rate"] == pytest.approx((768**2 * (0.1 + 11 * 0.18) + 12 * 768 * 4096 * 0.035) / fed)
    assert v1["operations"]["dense"] > 157e6 and v1["basis"] == "rates as stated"
    assert gpt2["operations"]["macs"] > v1["operations"]["macs"]


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "give --model DIR or --preset NAME"),
    (["--preset", "mini"], "mini spikes and has no weights here: give --model DIR or --rates"),
    (["--preset", "mini", "--rates", "encoder"], "--rates must read like"),
    (["--model", "x"], "either --data SHARDS or --text FILE"),
    (["--preset", "gpt2-mini", "--constants", "mine"], "unknown constants 'mine'"),
    (["--preset", "gpt2-mini", "--measure"], "--measure runs a model"),
    (["--preset", "gpt2-mini", "--batch", "0"], "--batch must be at least 1, got 0"),
])
def test_the_command_refuses(arguments, message, capsys):
    assert cli.main(["energy", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.needs("torch")
def test_an_empty_text_is_refused(small_checkpoint, tmp_path, capsys):
    text = tmp_path / "empty.txt"
    text.touch()
    assert cli.main(["energy", "--model", str(small_checkpoint), "--text", str(text)]) == 2
    assert "empty.txt is empty" in capsys.readouterr().err


@pytest.mark.needs("torch")
def test_measuring_without_a_counter_says_so(small_checkpoint, tmp_path, monkeypatch, capsys):
    text = tmp_path / "text.txt"
    text.write_text("the old city and the river; " * 20, encoding="utf-8")
    arguments = ["energy", "--model", str(small_checkpoint), "--text", str(text), "--measure", "--seconds", "0.01"]
    monkeypatch.setattr(counters, "available", lambda: ([], ["no RAPL: none here"]))
    assert cli.main(arguments) == 0
    assert "no RAPL: none here" in capsys.readouterr().out
    zone(tmp_path, "intel-rapl:0", "package-0", 7)
    monkeypatch.setattr(counters, "available", lambda: counters.rapl(tmp_path))
    assert cli.main([*arguments, "--repeats", "2", "--precision", "int8"]) == 0
    assert "measured: model (int8) 0 ± 0 mJ a token over 2 repetitions" in capsys.readouterr().out
