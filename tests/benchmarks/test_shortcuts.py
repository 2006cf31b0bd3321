from benchmarks.shortcuts import macro_f1


def test_simple_statistics_do_not_give_the_class_away():
    """Guessing one of five classes has 0.2, with a standard error of 0.03 on 200 test images; measured: 0.193."""
    found, _ = macro_f1(400)
    assert found < 0.26
