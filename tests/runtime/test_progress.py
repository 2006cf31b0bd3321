from src.runtime.progress import table


def test_metrics_before_and_after_stand_in_one_line():
    lines = table({"test/reward": -0.25, "test/before_reward": -1.5, "val/reward": -0.5}).splitlines()
    assert [line.split() for line in lines] == [
        ["test/reward", "-0.2500", "before", "-1.5000"],
        ["val/reward", "-0.5000"],
    ]
