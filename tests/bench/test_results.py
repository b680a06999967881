from bench.results import merge, reactor_of, read, write


def test_a_run_of_some_scenarios_leaves_the_others_as_they_were(tmp_path):
    write({"scenarios": {"a": {"figure": 1}, "b": {"figure": 2}}}, tmp_path)
    write(merge(read(tmp_path), {"scenarios": {"b": {"figure": 3}}}), tmp_path)
    assert read(tmp_path) == {"scenarios": {"a": {"figure": 1}, "b": {"figure": 3}}}


def test_figures_are_written_with_six_digits_that_count(tmp_path):
    write({"scenarios": {"a": {"values": [1234567.89, 0.000123456789, 7]}}}, tmp_path)
    assert read(tmp_path)["scenarios"]["a"]["values"] == [1234570.0, 0.000123457, 7]


def test_a_folder_without_a_run_has_no_scenarios(tmp_path):
    assert read(tmp_path) == {"scenarios": {}}


def test_a_run_is_named_after_the_reactor_that_served():
    assert reactor_of({"a": {"reactors": {"longshore reactor": "native", "longshore green": "native"}}}) == "native"
    assert (
        reactor_of({"a": {"reactors": {"x": "native"}}, "b": {"reactors": {"x": "portable"}}}) == "native-and-portable"
    )
    assert reactor_of({"a": {"reactors": {}}}) == "none"
