"""Options derived from the dataclasses, and where their values come from."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields

import pytest

from longshore.config import TLS, Limits, Proxy, Timeouts, Workers
from longshore.errors import ConfigError
from longshore.settings import Config, options

BY_NAME = {option.name: option for option in options()}


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    """No `longshore.toml` but the one that a test writes."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(arguments=None, path=None, **variables):
    return Config.load(path, variables, arguments)


def test_nothing_given_is_the_code_s_own_default():
    assert load() == Config()
    assert load().limits == Limits()
    assert load().timeouts == Timeouts()
    assert load().tls is None


def test_fields_stand_in_the_order_in_which_they_were_promised():
    promised = {TLS: "certfile keyfile client_ca minimum alpn context", Proxy: "trusted"}
    promised[Workers] = "count max_age max_connections max_memory jitter heartbeat user group"
    promised[Timeouts] = "handshake first_byte idle write drain lifetime linger blocked min_rate"
    for owner, names in promised.items():
        assert [item.name for item in fields(owner)][: len(names.split())] == names.split()


def test_every_field_that_a_text_can_spell_is_an_option():
    derived = {(option.section, option.key) for option in options()}
    tables = (("limits", Limits, ()), ("timeouts", Timeouts, ()), ("tls", TLS, ("context",)), ("proxy", Proxy, ()))
    for section, owner, left_out in tables:
        names = {item.name for item in fields(owner)} - set(left_out)
        assert {key for place, key in derived if place == section} == names


def test_no_two_options_share_a_spelling():
    assert len({option.flag for option in options()}) == len(options())
    assert len({option.variable for option in options()}) == len(options())


@pytest.mark.parametrize(
    ("name", "flag", "variable"),
    [
        ("max_connections", "--max-connections", "LONGSHORE_MAX_CONNECTIONS"),
        ("idle_timeout", "--idle-timeout", "LONGSHORE_IDLE_TIMEOUT"),
        ("first_byte_timeout", "--first-byte-timeout", "LONGSHORE_FIRST_BYTE_TIMEOUT"),
        ("min_rate", "--min-rate", "LONGSHORE_MIN_RATE"),
        ("client_ca", "--client-ca", "LONGSHORE_CLIENT_CA"),
        ("tls_minimum", "--tls-minimum", "LONGSHORE_TLS_MINIMUM"),
        ("bind", "--bind", "LONGSHORE_BIND"),
        ("proxy_trusted", "--proxy-trusted", "LONGSHORE_PROXY_TRUSTED"),
        ("proxy_timeout", "--proxy-timeout", "LONGSHORE_PROXY_TIMEOUT"),
        ("proxy_max_header", "--proxy-max-header", "LONGSHORE_PROXY_MAX_HEADER"),
    ],
)
def test_an_option_is_spelled_alike_everywhere(name, flag, variable):
    assert (BY_NAME[name].flag, BY_NAME[name].variable) == (flag, variable)


def test_types_come_from_the_annotations():
    kinds = {name: (option.kind, option.optional) for name, option in BY_NAME.items()}
    assert kinds["max_connections"] == ("int", False)
    assert kinds["max_threads"] == ("int", True)
    assert kinds["idle_timeout"] == ("float", True)
    assert kinds["farewell"] == ("bytes", False)
    assert kinds["alpn"] == ("tuple", False)
    assert kinds["certfile"] == ("str", True)


@pytest.mark.parametrize("option", options(), ids=lambda option: option.name)
def test_every_option_is_read_from_every_source(option, empty_directory):
    text, toml, value = {
        "int": ("7", "7", 7),
        "float": ("7.5", "7.5", 7.5),
        "bytes": ("busy", "'busy'", b"busy"),
        "tuple": ("x", "['x']", ("x",)),
        "str": ("x", "'x'", "x"),
    }[option.kind]
    if option.key in ("allow", "deny", "trusted"):
        text, toml, value = "10.0.0.0/8", "['10.0.0.0/8']", ("10.0.0.0/8",)
    elif option.choices:
        text = value = option.choices[-1]
        toml = f"'{value}'"
    elif option.name == "proxy_max_header":
        text, toml, value = "700", "700", 700
    (empty_directory / "other.toml").write_text(f"[{option.section}]\n{option.key} = {toml}\n")
    sources = (
        ({option.name: [text]}, None, {}),
        (None, None, {option.variable: text}),
        (None, "other.toml", {}),
    )
    if option.section == "proxy" and option.key != "trusted":
        # Nothing of it stands without a proxy to believe.
        sources = [({"proxy_trusted": ["unix"]} | (given or {}), path, found) for given, path, found in sources]
    for arguments, path, variables in sources:
        config = load(arguments, path, **variables)
        owner = config if option.section == "serve" else getattr(config, option.section)
        assert getattr(owner, option.key) == value


def test_none_is_a_value_where_the_type_has_it(empty_directory):
    (empty_directory / "longshore.toml").write_text("[timeouts]\nidle = 'none'\n")
    assert load().timeouts.idle is None
    assert load(LONGSHORE_WRITE_TIMEOUT="none").timeouts.write is None
    assert load({"drain_timeout": ["None"]}).timeouts.drain is None
    with pytest.raises(ConfigError, match="--max-connections: 'none' is not a whole number"):
        load({"max_connections": ["none"]})


def test_the_command_line_is_above_the_environment_and_that_above_the_file(empty_directory):
    (empty_directory / "longshore.toml").write_text(
        "[limits]\nmax_threads = 1\nmax_processes = 1\nmax_handshakes = 1\n"
    )
    limits = load({"max_threads": ["3"]}, LONGSHORE_MAX_THREADS="2", LONGSHORE_MAX_PROCESSES="2").limits
    assert (limits.max_threads, limits.max_processes, limits.max_handshakes) == (3, 2, 1)
    assert limits.max_connections == Limits().max_connections


def test_a_list_from_a_higher_source_replaces_that_of_a_lower_one(empty_directory):
    (empty_directory / "longshore.toml").write_text("[serve]\nbind = ['tcp://:1', 'tcp://:2']\n")
    assert load().bind == ("tcp://:1", "tcp://:2")
    assert load(LONGSHORE_BIND="tcp://:3 tcp://:4").bind == ("tcp://:3", "tcp://:4")
    assert load({"bind": ["tcp://:5"]}, LONGSHORE_BIND="tcp://:3").bind == ("tcp://:5",)


def test_an_empty_variable_is_not_set():
    assert load(LONGSHORE_STRATEGY="", LONGSHORE_BIND="") == Config()


def test_the_last_of_several_values_counts():
    assert load({"workers": ["3", "1"]}).workers == 1


def test_bytes_may_have_escapes_and_any_text():
    assert load({"farewell": ["full\\r\\n"]}).limits.farewell == b"full\r\n"
    assert load({"farewell": ["voll: grüße"]}).limits.farewell == "voll: grüße".encode()


def test_a_named_file_must_be_there():
    with pytest.raises(ConfigError, match=r"nowhere\.toml: No such file"):
        load(path="nowhere.toml")


@pytest.mark.parametrize(
    ("toml", "message", "hint"),
    [
        (
            "[limits]\nmax_conection = 1\n",
            r"longshore\.toml: \[limits\] has no key 'max_conection'",
            "max_connections?",
        ),
        ("[timeout]\nidle = 1\n", r"longshore\.toml: there is no table \[timeout\]", "timeouts?"),
        ("[limits]\nmax_threads = true\n", r"\[limits\] max_threads = True: must be a whole number", "threads"),
        ("[limits]\nmax_threads = 1.5\n", r"must be a whole number, or \"none\"", "threads"),
        ("[serve]\nbind = [1]\n", r"\[serve\] bind = \[1\]: must be a list of texts", "address"),
        ("[serve]\nlog_level = 'loud'\n", "log level 'loud'", ""),
    ],
)
def test_a_mistake_in_the_file_names_file_key_and_cure(empty_directory, toml, message, hint):
    (empty_directory / "longshore.toml").write_text(toml)
    with pytest.raises(ConfigError, match=message) as caught:
        load()
    assert hint in caught.value.hint


def test_a_refused_value_is_told_with_the_place_it_came_from(empty_directory):
    with pytest.raises(ConfigError, match=r"LONGSHORE_IDLE_TIMEOUT=0: Timeouts\(idle=0\.0\)"):
        load(LONGSHORE_IDLE_TIMEOUT="0", LONGSHORE_WRITE_TIMEOUT="3")


def test_a_value_that_only_lacks_another_one_is_not_to_blame():
    with pytest.raises(ConfigError, match=r"--proxy-max-header 7: Proxy\(max_header=7\)"):
        load({"proxy_max_header": ["7"], "proxy_trusted": ["unix"], "proxy_timeout": ["3"]})
    with pytest.raises(ConfigError, match="there is no proxy to believe"):
        load({"proxy_timeout": ["3"]})


@pytest.mark.parametrize(("name", "value"), [("strategy", "gren"), ("log_format", "xml"), ("workers", 0)])
def test_a_config_made_by_hand_is_checked_too(name, value):
    with pytest.raises(ConfigError, match=str(value)):
        Config(**{name: value})


def test_a_config_is_frozen():
    with pytest.raises(FrozenInstanceError):
        Config().workers = 2
