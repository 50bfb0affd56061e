"""`make results`: what runs, what is left out and why, and what a second call does."""

import sys
from pathlib import Path

import pytest

import launch
from experiments.harness import sweep
from tools import results
from tools.results import Study

TOY = "--experiment=tests.toy_experiment --sweep=seed=0:2 --steps=10 --executor=debug"


@pytest.fixture
def studies(monkeypatch, tmp_path):
    found = {
        "toy": Study(TOY, 1, {"toy": "final-losses"}),
        "data": Study(TOY, 1, data=True),
        "long": Study(TOY, 1e6),
        "broken": Study(f"{TOY} --fault=finish", 1, {"toy": "other"}),
        "part": Study(
            "--experiment=tests.toy_experiment --sweep=learning_rate=0.1,1e6 --model=line --executor=debug",
            1,
            {"part": "final-losses"},
        ),
    }
    monkeypatch.setattr(results, "STUDIES", found)
    monkeypatch.setattr(results, "FIGURES", tmp_path / "figures")
    (tmp_path / "figures").mkdir()
    return found


def call(monkeypatch, tmp_path, *arguments):
    monkeypatch.setattr(sys, "argv", ["results", f"--out={tmp_path / 'out'}", *arguments])
    return results.main()


def test_what_fits_is_run_and_what_does_not_is_named(studies, monkeypatch, tmp_path, capfd):
    assert call(monkeypatch, tmp_path, "toy", "data", "long") == 0
    out, err = capfd.readouterr()
    assert "== toy: python launch.py --experiment=tests.toy_experiment" in out
    assert "left out: data: it reads a data set; give --data_dir=DIR" in err
    assert "left out: long: it takes 1e+06 minutes, and 1" in err
    assert (tmp_path / "out" / "toy" / "seed=1" / "result.json").exists()
    assert (tmp_path / "figures" / "toy.svg").read_text().startswith("<?xml")


@pytest.mark.slow
def test_a_study_resumes_and_one_without_figures_is_named(studies, monkeypatch, tmp_path, capfd):
    assert call(monkeypatch, tmp_path, "toy", "broken", "part") == 1
    err = capfd.readouterr().err
    assert "left out: broken: exit code 1, and no figures; the same command resumes" in err
    # One of two runs diverges: that is in its report, and the study has its figure.
    assert "left out: part" not in err
    assert (tmp_path / "figures" / "part.svg").exists()
    assert call(monkeypatch, tmp_path, "toy") == 0
    assert "2 of 2 runs are finished already" in capfd.readouterr().out


def test_data_and_hours_are_passed_on(studies, tmp_path):
    commands = results.commands(["toy", "data"], Path("/out"), "/data")
    assert commands["data"][-2:] == ["--data_dir=/data", "--workdir=/out/data"]
    assert "--data_dir=/data" not in commands["toy"]
    assert results.run(["toy"], tmp_path, None, hours=0) == {"toy": "it takes 1 minutes, and 0 are left"}


def test_a_stop_ends_all(studies, monkeypatch, tmp_path):
    monkeypatch.setattr(results.subprocess, "run", lambda *a, **k: type("Ended", (), {"returncode": 130}))
    reason = "stopped; the same command resumes"
    assert results.run(["data", "toy", "broken", "long"], tmp_path, None, hours=3) == {
        "data": "it reads a data set; give --data_dir=DIR",
        **dict.fromkeys(("toy", "broken", "long"), reason),
    }


def test_unknown_studies_are_refused(studies, monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit):
        call(monkeypatch, tmp_path, "nothing")
    assert "invalid choice: 'nothing'" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(results.STUDIES))
def test_every_study_is_a_sweep_that_can_be_planned(name, tmp_path):
    """Its flags and the values of its axes are checked, as a launch does before the first run."""
    [command] = results.commands([name], tmp_path, "/data").values()
    options = launch.copy.deepcopy(launch.FLAGS)
    options.set_gnu_getopt(True)
    _, *rest = options(["", *command[2:]], known_only=True)
    definition = launch.experiment(options.experiment)
    fixed = launch.given_flags(definition.flags, rest)
    plan = sweep.plan(definition, options.sweep, fixed, options.workdir, widen=options.widen > 0)
    assert len(plan.members) >= 12
    assert {member.flags.get("seed") for member in plan.members} >= {0, 1, 2}


def test_the_figures_of_the_studies_are_those_of_the_pages():
    """A figure that no page shows would be left behind by `make results`."""
    folder = Path(results.__file__).parents[1] / "docs" / "figures"
    for study in results.STUDIES.values():
        assert all((folder / f"{target}.svg").is_file() for target in study.figures)
