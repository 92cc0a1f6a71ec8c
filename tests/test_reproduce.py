"""dsb reproduce: what it says, what it writes, and that its figures come from its settings."""

import json
import re
import subprocess
import sys
import time
from copy import deepcopy

import numpy as np
import pytest
from budgets import BUDGETS, CASES, write_cells

import dsb
from dsb import cli, reproduce
from dsb.metrics._estimate import excess
from dsb.reproduce import _cost, _machine, _report, _setup, _study

METHODS = {"gaussian": "kl", "table2": "w2", "mixtures": "cbw2", "singlecell": "w2"}
NEEDS = {"table2": "ot", "singlecell": "ot"}


@pytest.fixture(scope="session")
def cells(tmp_path_factory):
    """A folder of four days: a blob that moves and spreads."""
    folder = tmp_path_factory.mktemp("cells")
    write_cells(folder)
    return folder


def tiny(name, out, cells=None, **told):
    """A run of `name` in a second or two."""
    pytest.importorskip(NEEDS.get(name, "numpy"))
    cases = dict(CASES[name])
    if name == "singlecell":
        cases["data"] = cells
    given = {"seeds": 2, "budget": BUDGETS[name], "out": out, "say": lambda line: None}
    return reproduce.run(name, **(cases | given | told))


@pytest.fixture(scope="session")
def reports(tmp_path_factory, cells):
    """Runs by name, made when they are first asked for: (report, folder, lines printed)."""
    made = {}

    def get(name):
        if name not in made:
            folder, lines = tmp_path_factory.mktemp(name), []
            made[name] = (tiny(name, folder, cells, say=lines.append), folder, lines)
        return made[name]

    return get


def numbers(text):
    """The cells of a Markdown table, by line."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return rows[0], rows[2:]


@pytest.mark.parametrize("name", reproduce.NAMES)
def test_report(name, reports):
    """Every setting, seed, value, version; a table that says what the JSON says; a figure."""
    report, folder, lines = reports(name)
    paths = {path.suffix: path for path in folder.iterdir()}
    assert sorted(paths) == [".json", ".md", ".png"]
    assert paths[".png"].read_bytes().startswith(b"\x89PNG")
    assert json.loads(paths[".json"].read_text()) == report == reproduce.load(paths[".json"])
    assert report["complete"]
    (run,) = report["runs"]
    assert {"dsb", "processor", "instruction set", "threads", "numpy"} <= set(run["machine"])
    assert run["forecast"]["seconds"] > 0
    assert run["spent"]["seconds"] > 0
    for entry in report["results"]:
        for part in ("problem", "schedule", "reference", "net", "bridge", "training", "evaluation"):
            assert part in entry["settings"]
        assert entry["settings"]["training"] == {"iterations": 2, "steps": 40}
        assert entry["resolved"]["seed"] == _setup.seeds(1)["bridge"]  # of the last one
        assert {"convention", "batch", "learning_rate", "output"} <= set(entry["resolved"])
        assert [one["seed"] for one in entry["seeds"]] == [0, 1]
        for one in entry["seeds"]:
            assert all(np.isfinite(list(one["values"].values())))
            assert set(one["seconds"]) == {"training", "evaluation"}
        a, b = (one["values"][METHODS[name]] for one in entry["seeds"])
        assert a != b
        told = entry["summary"][METHODS[name]]
        assert told["mean"] == pytest.approx((a + b) / 2)
        assert told["error"] == pytest.approx(abs(a - b) / 2)
    text = paths[".md"].read_text()
    head, rows = numbers(text)
    assert len(rows) == len(report["results"])
    column = next(c for c in report["columns"] if c["key"] == METHODS[name])
    at = head.index(column["head"])
    for entry, row in zip(report["results"], rows, strict=True):
        assert len(row) == len(head)
        assert row[:2] == [entry["case"], entry["row"]]
        mean, error = (float(part) for part in row[at].split(" ± "))
        told = entry["summary"][METHODS[name]]
        half = 0.51 * 10.0 ** -column["digits"]
        assert mean == pytest.approx(column["scale"] * told["mean"], abs=half)
        assert error == pytest.approx(column["scale"] * told["error"], abs=half)
        for one in entry["seeds"]:  # each listed beneath
            shown = f"{column['scale'] * one['values'][METHODS[name]]:.{column['digits']}f}"
            assert f"seed {one['seed']}: {column['head']} {shown}" in text
    assert "NOT the protocol" in text
    assert any("NOT the protocol" in line for line in lines)
    cost = next(i for i, line in enumerate(lines) if "What it will cost" in line)
    first = next(i for i, line in enumerate(lines) if line.startswith("[1/"))
    assert cost < first


@pytest.mark.parametrize("name", reproduce.NAMES)
def test_again(name, reports):
    """The settings and the seed decide every value to the bit, and each of them does decide."""
    report = reports(name)[0]
    entry = report["results"][0]
    outcome = reproduce.again(report, entry["case"], entry["row"], 1)
    assert outcome.values == entry["seeds"][1]["values"]
    assert outcome.curve == entry["seeds"][1]["curve"]
    for part, changes in (
        ("bridge", {"learning_rate": 0.02}),
        ("net", {"width": 8}),
        ("schedule", {"T": 0.3}),
        ("training", {"steps": 30}),
    ):
        if (name, part) == ("mixtures", "schedule"):
            continue  # T goes with eps there
        other = deepcopy(report)
        other["results"][0]["settings"][part] |= changes
        found = reproduce.again(other, entry["case"], entry["row"], 1).values
        assert found[METHODS[name]] != outcome.values[METHODS[name]], part


def test_again_refuses_what_is_not_there(reports):
    report = reports("gaussian")[0]
    with pytest.raises(ValueError, match=r"case, row: expected one of \('d = 2', 'published'\)"):
        reproduce.again(report, "d = 3", "published", 0)


def test_memory_is_foretold(tmp_path):
    """Data, nets and what seeds leave behind included; seconds depend on what else the machine does."""
    budget = BUDGETS["gaussian"] | {"training": {"iterations": 1, "steps": 200}}
    budget |= {"net": {"width": 64, "depth": 2}, "evaluation": {"paths": 1000}}
    budget |= {"problem": {"points": 30_000}, "schedule": {"N": 4}}
    told = {"budget": budget, "rows": ["improved"], "seeds": 2, "threads": 1, "dims": [40]}
    (run,) = tiny("gaussian", tmp_path, **told)["runs"]
    assert run["forecast"]["seconds"] > 0
    assert run["spent"]["seconds"] > 0
    assert 0.85 < run["spent"]["memory"] / run["forecast"]["memory"] < 1.15


def test_one_seed_has_no_error(reports):
    report = deepcopy(reports("gaussian")[0])
    assert "Mean ± standard error" in _report.markdown(report)
    for entry in report["results"]:
        del entry["seeds"][1:]
    text = _report.markdown(report)
    assert "±" not in text and "Every seed:" in text


def test_cost_counts_all_steps():
    for iterations, steps in ((3, 1000), (3, 8000), (24, 1000)):
        data = dsb.datasets.toy("moons", 500)
        bridge = dsb.Bridge(data, net=dsb.MLP(width=16, depth=1), batch=64)
        cost = _cost.of_training(bridge, iterations, steps)
        assert cost.gradient_steps == 2 * iterations * steps
        assert cost.training == pytest.approx(cost.step * cost.gradient_steps)
        assert cost.parameters == bridge.net.n_parameters
        held = _machine.memory_in_use() + bridge.memory()["total"]
        assert cost.memory == pytest.approx(held, rel=0.1)


def test_cost_of_sizes():
    asked = []
    seconds, _ = _cost.scaled(asked.append, 100, (2.0, 3.0), (50, 200))
    assert asked == [100]
    assert 0 <= seconds < 1

    for _ in range(3):
        seconds, _ = _cost.scaled(lambda n: time.sleep(1e-6 * n * n), 800, (1.5, 3), (200, 400))
        if 0.3 < seconds / 0.64 < 3:
            break
    assert 0.3 < seconds / 0.64 < 3
    # Arrays of 49 and 196 MB, which the C library never keeps for later.
    _, memory = _cost.scaled(lambda n: np.ones((n, n, 100), np.uint8), 2000, (1.5, 3), (700, 1400))
    assert 0.7 < memory / (100 * 2000**2) < 1.4


def test_stopped_and_resumed(tmp_path, monkeypatch, reports):
    """Ctrl-C keeps the finished seeds; --resume adds the others, and all is as if never stopped."""
    made = reproduce.experiment("gaussian")
    run, calls = made.run, []

    def stopping(settings, seed):
        calls.append(seed)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return run(settings, seed)

    monkeypatch.setattr(made, "run", staticmethod(stopping))
    with pytest.raises(KeyboardInterrupt):
        tiny("gaussian", tmp_path)
    (path,) = tmp_path.glob("*.json")
    report = reproduce.load(path)
    assert not report["complete"]
    assert [len(entry["seeds"]) for entry in report["results"]] == [2, 1]
    assert "Stopped before all seeds were done" in path.with_suffix(".md").read_text()
    with pytest.raises(FileExistsError, match="--resume keeps its seeds"):
        tiny("gaussian", tmp_path)
    report = tiny("gaussian", tmp_path, resume=True)
    assert calls == [0, 0, 1, 1, 1]  # seed by seed, so that all rows grow alike
    assert report["complete"]
    assert [one["run"] for one in report["results"][1]["seeds"]] == [0, 1]
    for entry, other in zip(report["results"], reports("gaussian")[0]["results"], strict=True):
        for one, same in zip(entry["seeds"], other["seeds"], strict=True):
            assert one["values"] == same["values"]
    tiny("gaussian", tmp_path, resume=True)
    assert len(calls) == 5
    more = tiny("gaussian", tmp_path, resume=True, seeds=3)
    assert [len(entry["seeds"]) for entry in more["results"]] == [3, 3]
    assert len(tiny("gaussian", tmp_path, overwrite=True, seeds=1)["results"][0]["seeds"]) == 1


def test_resume_completes_what_is_known(tmp_path, reports):
    """Seeds of the exact answers that a report has not are added, and those that it has stay."""
    whole = reports("mixtures")[0]["results"][0]["expected"]
    assert {name: len(values) for name, values in whole.items()} == dict.fromkeys(whole, 3)
    assert len(set(whole["drift"])) == 3
    tiny("mixtures", tmp_path, seeds=1)
    (path,) = tmp_path.glob("*.json")
    report = reproduce.load(path)
    for entry in report["results"]:
        entry["expected"] = {name: values[:1] for name, values in entry["expected"].items()}
    path.write_text(json.dumps(report))
    values = [one["values"] for entry in report["results"] for one in entry["seeds"]]
    report = tiny("mixtures", tmp_path, seeds=1, resume=True)
    assert report["results"][0]["expected"] == whole
    assert values == [one["values"] for entry in report["results"] for one in entry["seeds"]]
    head, rows = numbers(path.with_suffix(".md").read_text())
    assert all("±" in row[head.index("exact drift")] for row in rows)


def test_resume_refuses_other_settings(tmp_path):
    tiny("gaussian", tmp_path, seeds=1)
    (path,) = tmp_path.glob("*.json")
    report = reproduce.load(path)
    with pytest.raises(ValueError, match="its settings are not those asked for"):
        tiny("gaussian", tmp_path, resume=True, budget={"training": {"iterations": 2, "steps": 41}})
    report["runs"][-1]["machine"]["dsb"] = "0.0.1"
    path.write_text(json.dumps(report))
    with pytest.raises(ValueError, match=r"made by dsb 0\.0\.1"):
        tiny("gaussian", tmp_path, resume=True)
    path.write_text("{}")
    with pytest.raises(ValueError, match="expected results of dsb reproduce"):
        tiny("gaussian", tmp_path, resume=True)


@pytest.mark.parametrize("how", ["raises", "nan"])
def test_a_seed_that_diverges_is_seen(how, tmp_path, monkeypatch):
    made = reproduce.experiment("gaussian")
    run = made.run

    def diverging(settings, seed):
        outcome = run(settings, seed)
        if seed == 1 and how == "raises":
            raise FloatingPointError("step 7: NaN in the loss")
        if seed == 1:
            outcome.values["kl"] = float("nan")
        return outcome

    monkeypatch.setattr(made, "run", staticmethod(diverging))
    report = tiny("gaussian", tmp_path, rows=["improved"])
    (entry,) = report["results"]
    assert "values" not in entry["seeds"][1]
    assert entry["summary"]["kl"]["mean"] == entry["seeds"][0]["values"]["kl"]
    text = next(tmp_path.glob("*.md")).read_text()
    head, (row,) = numbers(text)
    assert row[head.index("seeds")] == "1, 1 FAILED"
    assert "±" not in row[head.index("KL x 1e3")]
    assert "seed 1: FAILED, " + ("step 7" if how == "raises" else "kl is nan") in text


# ---- the command line ----


def test_info(capsys):
    assert cli.main(["info"]) == 0
    assert f"dsb                {dsb.__version__}" in capsys.readouterr().out
    command = [sys.executable, "-m", "dsb", "--version"]
    assert subprocess.check_output(command, text=True).strip() == f"dsb {dsb.__version__}"


def test_command(tmp_path, monkeypatch, capsys):
    """Options arrive, and the command stands in the results."""
    monkeypatch.setattr(reproduce.experiment("gaussian"), "quick_budget", BUDGETS["gaussian"])
    words = ["reproduce", "gaussian", "--dim", "2", "3", "--quick", "--row", "improved"]
    words += ["--out", str(tmp_path / "new"), "--threads", "1", "--no-figure"]
    before = dsb.get_num_threads()
    dsb.set_num_threads(2)
    try:
        assert cli.main(words) == 0
        assert dsb.get_num_threads() == 2  # the option is of the run alone
    finally:
        dsb.set_num_threads(before)
    out = capsys.readouterr().out
    assert "Quick run: NOT the protocol" in out
    assert "1 thread:" in out
    path = tmp_path / "new" / "d2-d3-improved-quick.json"
    report = reproduce.load(path)
    assert report["budget"] == "quick"
    assert [entry["case"] for entry in report["results"]] == ["d = 2", "d = 3"]
    assert {entry["row"] for entry in report["results"]} == {"improved"}
    assert [len(entry["seeds"]) for entry in report["results"]] == [1, 1]
    assert report["runs"][0]["command"] == "dsb " + " ".join(words)
    assert "DSB (full protocol)" not in out  # no figure was published for d = 2
    assert not path.with_suffix(".png").exists()
    assert cli.main(words) == 1
    assert "holds results already" in capsys.readouterr().err


@pytest.mark.parametrize("name", reproduce.NAMES)
def test_command_asks_for_everything(name, monkeypatch, tmp_path):
    """Without options, the cases are those of the experiment's own defaults."""
    made, found = reproduce.experiment(name), []
    monkeypatch.setenv("DSB_DATA", str(tmp_path))
    (tmp_path / "single-cell").mkdir()
    monkeypatch.setattr(reproduce, "study", lambda chosen, options: found.append(chosen.cases))
    assert cli.main(["reproduce", name]) == 0
    assert found == [made.everything]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gaussian", "--dim", "0"], "dim: expected a whole number of at least 1, got 0"),
        (["gaussian", "--seeds", "0"], "seeds: expected a whole number of at least 1, got 0"),
        (["gaussian", "--threads", "0"], "threads: expected"),
        (["gaussian", "--row", "publishd"], "row: expected one of .*did you mean 'published'"),
        (["table2", "--set", "moon"], "set: expected one of .*did you mean 'moons'"),
        (["mixtures", "--eps", "0"], "eps: expected a number in"),
        (["mixtures", "--eps", "nan"], "eps: expected"),
        (["singlecell"], "data: expected the folder .*--data FOLDER, or set DSB_DATA"),
        (["singlecell", "--data", "nowhere"], "data: no folder nowhere"),
        (["singlecell", "--data", "EMPTY"], r"data: expected one file \*day_2.npy .* no .npy file"),
        (["singlecell", "--data", "CELLS", "--days", "4,3,2"], "days: expected three in order"),
        (["singlecell", "--data", "CELLS", "--days", "2,3"], "days: expected three in order"),
        (["singlecell", "--data", "CELLS", "--dim", "9"], "dim: expected at most 8"),
    ],
)
def test_bad_arguments(words, message, tmp_path, cells, capsys, monkeypatch):
    """One line that names the argument, and nothing written."""
    monkeypatch.delenv("DSB_DATA", raising=False)
    if words[0] in NEEDS and "--set" not in words:
        pytest.importorskip(NEEDS[words[0]])
    (tmp_path / "empty").mkdir()
    named = {"CELLS": str(cells), "EMPTY": str(tmp_path / "empty")}
    words = [named.get(word, word) for word in words]
    assert cli.main(["reproduce", *words, "--out", str(tmp_path / "out")]) == 1
    err = capsys.readouterr().err
    assert re.match(f"dsb reproduce: {message}", err), err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [[], ["train"], ["reproduce"], ["reproduce", "mnist"],
                                   ["reproduce", "gaussian", "--dim", "x"],
                                   ["reproduce", "gaussian", "--resume", "--overwrite"]])  # fmt: skip
def test_usage(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 2
    assert "usage: dsb" in capsys.readouterr().err


def test_bad_budget(tmp_path):
    with pytest.raises(ValueError, match="budget: expected names of settings, got 'step'; did you"):
        tiny("gaussian", tmp_path, budget={"training": {"step": 3}})
    with pytest.raises(TypeError, match=r"gaussian: has no such cases: \['dims', 'sets'\]"):
        tiny("gaussian", tmp_path, sets=["moons"])


@pytest.mark.parametrize(
    ("name", "package", "message"),
    [
        ("table2", "ot", r"needs POT: pip install 'schrodinger-bridge\[metrics\]'"),
        ("singlecell", "ot", r"needs POT: pip install 'schrodinger-bridge\[metrics\]'"),
    ],
)
def test_missing_package(name, package, message, tmp_path, monkeypatch, cells):
    """It is told before anything is trained."""
    monkeypatch.setitem(sys.modules, package, None)
    cases = CASES[name] | ({"data": cells} if name == "singlecell" else {})
    with pytest.raises(ImportError, match=message):
        reproduce.run(name, out=tmp_path / "out", say=pytest.fail, **cases)
    assert not (tmp_path / "out").exists()


def test_missing_matplotlib(tmp_path):
    code = (
        "import sys; sys.modules['matplotlib'] = None; from dsb import cli; "
        f"sys.exit(cli.main(['reproduce', 'gaussian', '--quick', '--out', {str(tmp_path / 'out')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install" in done.stderr
    assert "--no-figure" in done.stderr
    assert not (tmp_path / "out").exists()


# ---- small things ----


def test_seeds_of_roles_are_all_different():
    told = [value for seed in range(200) for value in _setup.seeds(seed).values()]
    assert len(set(told)) == len(told)


def test_excess_and_mean():
    assert excess(0.5, 0.3) == pytest.approx(0.4)
    assert excess(0.3, 0.5) == 0.0
    assert _setup.mean_and_error([2.0]) == (2.0, None)
    mean, error = _setup.mean_and_error([1.0, 2.0, 6.0])
    assert mean == 3.0
    assert error == pytest.approx(np.std([1, 2, 6], ddof=1) / 3**0.5)


def test_schedules_of_settings():
    assert _setup.schedule({"shape": "constant", "N": 4, "T": 2.0}) == dsb.Schedule([0.5] * 4)
    found = _setup.schedule({"shape": "linear", "N": 4, "T": 3.0, "ratio": 2.0})
    np.testing.assert_allclose(found.steps, [0.5, 1.0, 1.0, 0.5])
    told = {"shape": "geometric", "N": 3, "T": 7.0, "ratio": 4.0, "symmetric": False}
    np.testing.assert_allclose(_setup.schedule(told).steps, [1.0, 2.0, 4.0])
    prior = dsb.Gaussian([1.0, 2.0], 3.0)
    assert _setup.reference("OU", prior) == dsb.OU([1.0, 2.0], 3.0)
    assert _setup.reference("Brownian", prior) == dsb.Brownian()
    with pytest.raises(ValueError, match="reference: expected 'Brownian' or 'OU', got 'wave'"):
        _setup.reference("wave")


def test_figures_of_columns():
    """Means and errors are shown in the column's units; what is not there is a dash."""
    column = _report.Column("kl", "KL x 1e3", 1e3, 2)
    report = {
        "experiment": "x", "protocol": "", "budget": "full", "complete": True, "runs": [],
        "columns": [column._asdict(), _report.Column("other", "other")._asdict()],
        "published": [_report.Published("theirs", "arXiv:1", {"a": 0.5})._asdict()],
        "results": [
            {"case": "a", "row": "r", "settings": {"training": {}}, "expected": {},
             "seeds": [{"seed": i, "values": {"kl": v}} for i, v in enumerate((0.001, 0.003))]},
            {"case": "b", "row": "r", "settings": {"training": {}}, "expected": {"other": [0.2, 0.3]},
             "seeds": []},
        ],
    }  # fmt: skip
    head, rows = numbers(_report.markdown(report))
    assert head == ["problem", "settings", "KL x 1e3", "other", "seeds", "theirs"]
    assert rows == [
        ["a", "r", "2.00 ± 1.00", "-", "2", "0.5"],
        ["b", "r", "-", "0.250 ± 0.050", "0", "-"],
    ]


def test_study_is_told_of_every_setting():
    """A budget cannot name what a row does not have, but options of a bridge and of a net."""
    changed = _setup.changed({"bridge": {"batch": 1}, "net": {"width": 3}, "training": {"steps": 1}},
                             {"bridge": {"ema": 0.9}, "net": {"depth": 2}})  # fmt: skip
    assert changed == {
        "bridge": {"batch": 1, "ema": 0.9},
        "net": {"depth": 2},
        "training": {"steps": 1},
    }
    assert _study.FORMAT == 1
