"""The report as text, on the tables that `test_evaluate` works by hand."""

import pytest

from drnet_jax.cost import Costs, Parameters
from drnet_jax.evaluation.report import text_report
from tests.test_evaluate import TableEngine, evaluated
from tests.test_policies import ANSWERING


def text_at(target, **how):
    return text_report(evaluated(target, seed=3, **how).report)


def test_the_tables_by_hand():
    lines = text_at(0.0).splitlines()
    rows = {line[:9].strip(): line[9:].split() for line in lines}
    assert rows["fixed 16"][:4] == ["66.67", "83.33", "100", "1.000"]
    assert rows["routed"][:4] == ["50.00", "83.33", "65", "0.650"]
    assert rows["routed"][-1] == "33/33/33"
    assert "±" in rows["random"][1]
    assert any(line.startswith("budget: none") for line in lines)
    gain, = (line for line in lines if line.startswith("points over the best random mix"))
    # For 65 one can mix 8 px (2 of 6 right, for 20) and 16 px (4 of 6, for 100): 52.08 %.
    assert " -2.08 (" in gain
    where = next(at for at, line in enumerate(lines) if line.startswith("images by cheapest"))
    assert [line.split()[-3:] for line in lines[where + 1 : where + 4]] == [
        ["0", "1", "0"], ["0", "1", "0"], ["1", "0", "1"]]
    assert lines[-1].startswith("cascade at the cost of routing: ")


def test_a_missed_target_is_said_with_its_reason():
    text = text_at(60)
    assert "budget: 60 asked for, 58 realised, at price 0.5" in text
    assert "warning: routing costs 58 multiply-adds where 60 were" in text
    assert "nearly the same scores" in text
    assert "warning" not in text_at(45.5)


def test_options_are_called_by_their_names():
    lines = text_at(0.0, engine=TableEngine(ANSWERING)).splitlines()
    rows = {line[:15].strip(): line[15:].split() for line in lines}
    assert lines[2].endswith("% by 16/12/8/predictor")
    assert rows["fixed predictor"][:4] == ["33.33", "50.00", "5", "0.050"]
    assert rows["routed"][-1] == "17/33/33/17"
    where = next(at for at, line in enumerate(lines) if line.startswith("images by cheapest"))
    assert [line.split() for line in lines[where + 1 : where + 5]] == [
        ["16", "0", "1", "0", "0"], ["12", "0", "1", "0", "0"], ["8", "1", "0", "0", "0"],
        ["predictor", "0", "0", "1", "1"]]
    of_all, of_resolutions = (
        line.split("  ")[-1].strip() for line in lines
        if line.startswith(("points over the best random mix", "the same, of resolutions")))
    # For 48.33 one can mix the predictor (2 of 6) and 16 px (4 of 6): 48.5 %; routed has 4 of 6.
    assert of_all.startswith("+18.") and of_resolutions.startswith("+21.")


def test_ceilings_are_told():
    line, = (line for line in text_at(0.0).splitlines() if line.startswith("for comparison"))
    foresight = evaluated(0.0, seed=3).report["ceilings"]["foresight"]
    assert f"{100 * foresight:.2f} % at the cost of routing" in line
    assert "66.67 % of the images in memory for an oracle over the resolutions" in line
    assert "83.33 % for one over the base's answers to an image and to its mirror image" in line


@pytest.mark.parametrize("trained", [True, False])
def test_a_predictor_that_is_not_trained_is_told(trained):
    report = evaluated(0.0).report | {"predictor_trained": trained}
    warned = [line for line in text_report(report).splitlines() if line.startswith("warning")]
    assert warned == ([] if trained else [
        "warning: the predictor of this checkpoint is not trained: what is routed means nothing"])


def test_a_single_resolution_foretells_nothing():
    report = evaluated(engine=TableEngine(Costs((16,), (100,), 5, Parameters(0, 0, 0)))).report
    assert "foretold" not in report["router"]
    assert "foretells doubt" not in text_report(report) and "foretells doubt" in text_at(0.0)
