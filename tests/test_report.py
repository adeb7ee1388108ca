"""The report as text, on the tables that `test_evaluate` works by hand."""

from drnet_jax.evaluation.report import text_report
from tests.test_evaluate import evaluated


def text_at(target):
    return text_report(evaluated(target, seed=3).report)


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
    where = next(at for at, line in enumerate(lines) if line.startswith("images by smallest"))
    assert [line.split()[-3:] for line in lines[where + 1 : where + 4]] == [
        ["0", "1", "0"], ["0", "1", "0"], ["1", "0", "1"]]
    assert lines[-1].startswith("cascade at the cost of routing: ")


def test_a_missed_target_is_said_with_its_reason():
    text = text_at(60)
    assert "budget: 60 asked for, 58 realised, at price 0.5" in text
    assert "warning: routing costs -2.8%" in text and "nearly the same scores" in text
    assert "warning" not in text_at(45.5)
